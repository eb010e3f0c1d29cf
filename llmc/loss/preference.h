/* preference.h - losses of train_dpo on preference pairs, as functions of log-probabilities.
 *
 * One function, preference_loss(), takes the per-token log-probabilities of chosen and rejected completions under the
 * policy and a reference. It returns the loss and its gradient with respect to each log-probability. It needs no model.
 *
 *   c = log pi(y_w)/ref(y_w)   r = log pi(y_l)/ref(y_l)   sums over the completion's tokens; |w|, |l| token counts
 *   f(x) = x (f-divergence: below)   D = f(c) - f(r)   S = sigmoid   ls = log S   b = beta, e = label_smoothing
 *
 *   loss          per pair                                                                     paper
 *   sigmoid       -(1-e) ls(bD) - e ls(-bD); TRL ignores e here. e > 0: conservative DPO        2305.18290, cDPO
 *   sigmoid_norm  the same with D = f(c)/|w| - f(r)/|l|                                         2411.15124 (Tulu 3)
 *   hinge         max(0, 1 - bD)                                                                2305.10425, 2309.06657
 *   ipo           (f(c)/|w| - f(r)/|l| - 1/(2b))^2                                              2310.12036 eq. 17
 *   ipo_sum       (D - 1/(2b))^2: sums, as in TRL's OnlineDPO and the paper's text              2310.12036 eq. 17
 *   exo_pair      S(bD) (ls(bD) - log(1-e)) + S(-bD) (ls(-bD) - log e), e > 0                   2402.00856 eq. 16
 *   nca_pair      -ls(bc) - ls(-bc)/2 - ls(-br)/2                                               2402.05369
 *   robust        (-(1-e) ls(bD) + e ls(-bD)) / (1-2e), e < 1/2                                 2403.00409
 *   bco_pair      -ls(bc) - ls(-br)                                                             2404.04656
 *   sppo_hard     (c - 1/(2b))^2 + (r + 1/(2b))^2                                               2405.00675 eq. 4.7
 *   aot           sort log pi(y_w)/pi(y_l) and ref's over the batch, D = their difference by rank,
 *                 -(1-e) ls(bD) - e ls(-bD)                                                     2406.05882
 *   aot_unpaired  sort c and r over the batch, D = their difference by rank, the same           2406.05882
 *   apo_zero      1 - S(bc) + S(br)                                                             2408.06266 eq. 7
 *   apo_down      S(bc) + 1 - S(b(c-r))                                                         2408.06266 eq. 8
 *   discopop      (1-m) (-ls(bD)) + m exp(-bD), m = S(bD/tau)                                   2406.08414 eq. 5
 *   sft           -mean of log pi over the batch's chosen tokens                                RPO: 2404.19733
 *   dpop          -ls(b(c - r - lambda max(0, -c)))                                             2402.13228 eq. 3
 *   orpo          -mean of log pi over the batch's prompt and chosen tokens - b ls(o_w - o_l),
 *                 o = a - log(1 - e^a), a = mean log pi of the completion's tokens              2403.07691 eq. 6
 *   simpo         -(1-e) ls(b (h(a_w) - h(a_l)) - gamma) - e ls(-...)                           2405.14734 eq. 6
 *   cpo           -(1-e) ls(b (h(log pi(y_w)) - h(log pi(y_l)))) - e ls(-...) + cpo_alpha sft   2401.08417 eq. 3
 *   tpo           -(1-e) ls(b (log pi(y_w) - log pi(y_l))) - e ls(-...) + tpo_alpha gold          2405.16681
 *   tpo-l         -(1-e) ls(b (a_w - a_l) - gamma) - e ls(-...) + tpo_alpha gold                  2405.16681
 *                 gold: -mean of log pi over the batch's tokens of the gold answers
 *
 * h(x) = (1 - e^(-alpha x)) / alpha, alpha = 0: x (AlphaPO: 2501.03884). f (f-DPO: 2309.16240): reverse_kl x;
 * forward_kl 1 - e^-x; js_divergence log 2 + ls(x); alpha_divergence (e^((a-1)x) - 1)/(a-1), the exponent at most 80.
 * LD-DPO (2409.06411): in the sums c, r and logps, tokens past the length of the shorter completion have weight
 * ld_alpha.
 * WPO (2406.11827): the pair's loss, except sft, is multiplied by w_w w_l, with
 * w = exp(mean_t(log pi_t - log sum_v p_v^2)); no gradient flows through these weights.
 * Weighted sums of losses are allowed: RPO is sigmoid,sft; MPO is sigmoid,bco_pair,sft with weights 0.8, 0.2, 1.
 *
 * Formulas and defaults are those of TRL 1.16 (tests/golden/preference.txt holds values computed by TRL's code). simpo
 * is the paper's, without TRL's cpo_alpha term; `simpo,sft` adds that term. Without a reference (ref_logp NULL) its
 * log-probabilities are taken as 0: the reference-free form.
 *
 * The number of pairs and the token counts are those of the WHOLE optimizer batch (PreferenceNormaliser), so losses and
 * gradients of micro-batches add up to those of the batch. Losses that sort (preference_sorts()) need the whole batch
 * in one call.
 *
 *     PreferenceConfig c = preference_config();
 *     preference_add(&c, PREFERENCE_IPO, 1);
 *     PreferenceNormaliser n = preference_normaliser(offset, pairs);
 *     PreferenceStats stats = {0};
 *     for (each micro-batch) {
 *         loss += preference_loss(&c, &n, &b, dlogp, &stats);
 *         model_backward(&model, &work, &batch, 1.0f, dlogp, NULL, NULL);     // model/transformer.h
 *     }
 */
#ifndef LLMC_LOSS_PREFERENCE_H
#define LLMC_LOSS_PREFERENCE_H

#include "../base/error.h" /* xmalloc */
#include "scalar.h"        /* sigmoid, METRIC, log_sigmoid, LossMetric */
#include <assert.h>
#include <math.h>

#define PREFERENCE_LOSS_CHOICES                                                                                        \
    "sigmoid|sigmoid_norm|hinge|ipo|ipo_sum|exo_pair|nca_pair|robust|bco_pair|sppo_hard|aot|aot_unpaired|"             \
    "apo_zero|apo_down|discopop|sft|dpop|orpo|simpo|cpo|tpo|tpo-l"
/* in the order of PREFERENCE_LOSS_CHOICES */
typedef enum {
    PREFERENCE_SIGMOID,
    PREFERENCE_SIGMOID_NORM,
    PREFERENCE_HINGE,
    PREFERENCE_IPO,
    PREFERENCE_IPO_SUM,
    PREFERENCE_EXO_PAIR,
    PREFERENCE_NCA_PAIR,
    PREFERENCE_ROBUST,
    PREFERENCE_BCO_PAIR,
    PREFERENCE_SPPO_HARD,
    PREFERENCE_AOT,
    PREFERENCE_AOT_UNPAIRED,
    PREFERENCE_APO_ZERO,
    PREFERENCE_APO_DOWN,
    PREFERENCE_DISCOPOP,
    PREFERENCE_SFT,
    PREFERENCE_DPOP,
    PREFERENCE_ORPO,
    PREFERENCE_SIMPO,
    PREFERENCE_CPO,
    PREFERENCE_TPO,
    PREFERENCE_TPO_L,
    PREFERENCE_LOSSES
} PreferenceLoss;

#define DIVERGENCE_CHOICES "reverse_kl|forward_kl|js_divergence|alpha_divergence"
/* in the order of DIVERGENCE_CHOICES */
typedef enum { DIVERGENCE_REVERSE_KL, DIVERGENCE_FORWARD_KL, DIVERGENCE_JS, DIVERGENCE_ALPHA } Divergence;

typedef struct PreferenceConfig {
    int losses;
    PreferenceLoss loss[PREFERENCE_LOSSES];
    double weight[PREFERENCE_LOSSES];
    double beta, label_smoothing;
    Divergence divergence;
    double divergence_alpha; /* alpha of alpha_divergence */
    double ld_alpha;         /* 1: every token counts in full */
    bool use_weighting;      /* WPO */
    double discopop_tau, dpop_lambda, simpo_gamma, cpo_alpha, tpo_alpha, tpo_l_gamma;
    double alpha; /* AlphaPO's alpha, for simpo and cpo; 0: none */
} PreferenceConfig;

/* An empty list of losses with TRL's defaults; dpop_lambda is the paper's. */
static inline PreferenceConfig preference_config(void) {
    PreferenceConfig c = {.beta = 0.1,
                          .divergence_alpha = 0.5,
                          .ld_alpha = 1,
                          .discopop_tau = 0.05,
                          .dpop_lambda = 50,
                          .simpo_gamma = 0.5,
                          .cpo_alpha = 1,
                          .tpo_alpha = 1,
                          .tpo_l_gamma = 0.5};
    return c;
}

static inline bool preference_has(const PreferenceConfig *c, PreferenceLoss loss) {
    for (int i = 0; i < c->losses; i++)
        if (c->loss[i] == loss) return true;
    return false;
}

/* Adds a loss to the list, or weight to a loss that the list already holds. */
static inline void preference_add(PreferenceConfig *c, PreferenceLoss loss, double weight) {
    int i = 0;
    while (i < c->losses && c->loss[i] != loss) i++;
    if (i == c->losses) {
        c->loss[c->losses++] = loss;
        c->weight[i] = 0;
    }
    c->weight[i] += weight;
}

static inline bool preference_is_tpo(PreferenceLoss loss) { return loss == PREFERENCE_TPO || loss == PREFERENCE_TPO_L; }

static inline bool preference_uses_reference(PreferenceLoss loss) {
    return loss != PREFERENCE_SFT && loss != PREFERENCE_ORPO && loss != PREFERENCE_SIMPO && loss != PREFERENCE_CPO &&
           !preference_is_tpo(loss);
}

/* Whether a loss trains on the gold answers. */
static inline bool preference_uses_gold(const PreferenceConfig *c) {
    return c->tpo_alpha > 0 && (preference_has(c, PREFERENCE_TPO) || preference_has(c, PREFERENCE_TPO_L));
}

static inline bool preference_needs_reference(const PreferenceConfig *c) {
    for (int i = 0; i < c->losses; i++)
        if (preference_uses_reference(c->loss[i])) return true;
    return false;
}

/* Whether a loss has a negative log-likelihood term on the chosen completions. */
static inline bool preference_learns_chosen(const PreferenceConfig *c) {
    return preference_has(c, PREFERENCE_SFT) || preference_has(c, PREFERENCE_CPO) || preference_has(c, PREFERENCE_ORPO);
}

/* Returns whether a loss sorts the pairs of the batch. If so, single pairs have no loss of their own: WPO cannot weight
 * them, and one call must hold all pairs. */
static inline bool preference_sorts(const PreferenceConfig *c) {
    return preference_has(c, PREFERENCE_AOT) || preference_has(c, PREFERENCE_AOT_UNPAIRED);
}

/* Returns whether the loss depends only on the difference of scores f(c) - f(r). Only then does the unknown normaliser
 * of f-DPO cancel; the other losses require reverse_kl (sft has no score). */
static inline bool preference_takes_divergence(PreferenceLoss loss) {
    return loss <= PREFERENCE_EXO_PAIR || loss == PREFERENCE_ROBUST || loss == PREFERENCE_DISCOPOP ||
           loss == PREFERENCE_SFT;
}

/* A micro-batch of pairs. In every per-token array, the tokens of pair i are [offset[4i], offset[4i+1]) for the prompt
 * (empty except for orpo), [offset[4i+1], offset[4i+2]) for the chosen completion, [offset[4i+2], offset[4i+3]) for the
 * rejected one and [offset[4i+3], offset[4i+4]) for the gold answer (empty except for tpo and tpo-l). */
typedef struct PreferenceBatch {
    int32_t pairs;
    const int32_t *offset;   /* (4 pairs + 1) */
    const float *logp;       /* log pi(y_t) */
    const float *ref_logp;   /* log ref(y_t); NULL: reference-free */
    const float *log_square; /* log sum_v p_v^2 at each token, or NULL if use_weighting is not set */
    const float *linear;     /* (2 pairs) or NULL: adds linear[2i] log pi(y_w) + linear[2i+1] log pi(y_l) to pair i's
                                loss (XPO's optimism) */
} PreferenceBatch;

/* Sums over the whole optimizer batch. */
typedef struct PreferenceNormaliser {
    double pairs, chosen_tokens, prompt_tokens, gold_tokens;
} PreferenceNormaliser;

static inline PreferenceNormaliser preference_normaliser(const int32_t *offset, int32_t pairs) {
    PreferenceNormaliser n = {.pairs = pairs};
    for (int32_t i = 0; i < pairs; i++) {
        n.prompt_tokens += offset[4 * i + 1] - offset[4 * i];
        n.chosen_tokens += offset[4 * i + 2] - offset[4 * i + 1];
        n.gold_tokens += offset[4 * i + 4] - offset[4 * i + 3];
    }
    return n;
}

/* Sums over micro-batches, starting from zero; preference_metrics() turns them into means. */
typedef struct PreferenceStats {
    double pairs, loss;
    double chosen, rejected, right;    /* rewards; pairs with chosen > rejected, and half of those with equal rewards */
    double chosen_logp, rejected_logp; /* as defined by the first loss */
    double chosen_ratio, rejected_ratio; /* c and r, independent of the loss */
    double nll, nll_tokens;              /* over the tokens that sft, cpo, orpo or tpo train on */
    double log_odds_ratio, log_odds;     /* orpo */
    double weight;                       /* WPO */
} PreferenceStats;

/* ---- scalar functions ------------------------------------------------------------------------------------------ */

/* A value and its derivative. */
typedef struct PreferenceValue {
    double y, dy;
} PreferenceValue;

/* The score of a log-ratio x: f'(e^x) for the divergence's generator f (f-DPO, table 1). */
static inline PreferenceValue preference_divergence(const PreferenceConfig *c, double x) {
    const double a = c->divergence_alpha - 1;
    switch (c->divergence) {
    case DIVERGENCE_FORWARD_KL: return (PreferenceValue){1 - exp(-x), exp(-x)};
    case DIVERGENCE_JS: return (PreferenceValue){log(2) + log_sigmoid(x), sigmoid(-x)};
    case DIVERGENCE_ALPHA:
        if (fabs(a) < 1e-6) break; /* the limit */
        if (a * x > 80) return (PreferenceValue){(exp(80) - 1) / a, 0};
        return (PreferenceValue){(exp(a * x) - 1) / a, exp(a * x)};
    default: break;
    }
    return (PreferenceValue){x, 1};
}

/* AlphaPO's reward h(x) of a log-probability x, for simpo and cpo; x for other losses. */
static inline PreferenceValue preference_shaped(const PreferenceConfig *c, PreferenceLoss loss, double x) {
    if (c->alpha == 0 || preference_is_tpo(loss)) return (PreferenceValue){x, 1};
    return (PreferenceValue){(1 - exp(-c->alpha * x)) / c->alpha, exp(-c->alpha * x)};
}

/* log p/(1-p) of a mean log-probability a < 0, p = e^a (ORPO, eq. 4). a is kept below 0, where the log-odds are
 * infinite. */
static inline PreferenceValue preference_log_odds(double a) {
    a = a > -1e-12 ? -1e-12 : a;
    const double log_rest = a < -M_LN2 ? log1p(-exp(a)) : log(-expm1(a));
    return (PreferenceValue){a - log_rest, -1 / expm1(a)};
}

/* -(1-e) ls(u) - e ls(-u) */
static inline PreferenceValue preference_smoothed(double u, double e) {
    return (PreferenceValue){-(1 - e) * log_sigmoid(u) - e * log_sigmoid(-u), -(1 - e) * sigmoid(-u) + e * sigmoid(u)};
}

/* ---- loss of one pair ------------------------------------------------------------------------------------------ */

/* One completion. logp and ref are sums weighted by LD-DPO, plain is the unweighted sum of log pi. */
typedef struct PreferenceCompletion {
    double logp, ref, plain, length;
} PreferenceCompletion;

/* The loss and its derivatives with respect to logp and plain of each completion. */
typedef struct PreferenceTerm {
    double l;
    double dlogp[2], dplain[2];
} PreferenceTerm;

/* Losses that are functions of u = b (f(c)/n_w - f(r)/n_l). */
static inline PreferenceValue preference_of_margin(const PreferenceConfig *c, PreferenceLoss loss, double u) {
    const double e = c->label_smoothing, S = sigmoid(u), ls = log_sigmoid(u);
    switch (loss) {
    case PREFERENCE_HINGE: return (PreferenceValue){u >= 1 ? 0 : 1 - u, u >= 1 ? 0 : -1};
    case PREFERENCE_IPO:
    case PREFERENCE_IPO_SUM: { /* (u/b - 1/(2b))^2 */
        const double d = (u - 0.5) / c->beta;
        return (PreferenceValue){d * d, 2 * d / c->beta};
    }
    case PREFERENCE_EXO_PAIR: /* ls(u) - ls(-u) = u */
        return (PreferenceValue){S * (ls - log1p(-e)) + (1 - S) * (ls - u - log(e)),
                                 S * sigmoid(-u) * (u - log1p(-e) + log(e))};
    case PREFERENCE_ROBUST: {
        const PreferenceValue v = preference_smoothed(u, -e / (1 - 2 * e));
        return v;
    }
    case PREFERENCE_DISCOPOP: {
        const double m = sigmoid(u / c->discopop_tau), dm = m * (1 - m) / c->discopop_tau;
        return (PreferenceValue){(1 - m) * -ls + m * exp(-u),
                                 dm * (exp(-u) + ls) - (1 - m) * sigmoid(-u) - m * exp(-u)};
    }
    default: return preference_smoothed(u, e);
    }
}

/* Losses that are functions of x = bc and y = br. */
static inline PreferenceTerm preference_of_ratios(const PreferenceConfig *c, PreferenceLoss loss, double x, double y) {
    const double Sx = sigmoid(x), Sy = sigmoid(y), half = 0.5;
    PreferenceTerm t = {0};
    switch (loss) {
    case PREFERENCE_NCA_PAIR:
        t.l = -log_sigmoid(x) - half * (log_sigmoid(-x) + log_sigmoid(-y));
        t.dlogp[0] = -sigmoid(-x) + half * Sx;
        t.dlogp[1] = half * Sy;
        break;
    case PREFERENCE_BCO_PAIR:
        t.l = -log_sigmoid(x) - log_sigmoid(-y);
        t.dlogp[0] = -sigmoid(-x);
        t.dlogp[1] = Sy;
        break;
    case PREFERENCE_SPPO_HARD: { /* in c and r: x / b, y / b */
        const double w = (x - half) / c->beta, l = (y + half) / c->beta;
        t.l = w * w + l * l;
        t.dlogp[0] = 2 * w / c->beta;
        t.dlogp[1] = 2 * l / c->beta;
        break;
    }
    case PREFERENCE_APO_ZERO:
        t.l = 1 - Sx + Sy;
        t.dlogp[0] = -Sx * (1 - Sx);
        t.dlogp[1] = Sy * (1 - Sy);
        break;
    case PREFERENCE_APO_DOWN: {
        const double S = sigmoid(x - y);
        t.l = Sx + 1 - S;
        t.dlogp[0] = Sx * (1 - Sx) - S * (1 - S);
        t.dlogp[1] = S * (1 - S);
        break;
    }
    default: { /* dpop */
        const double u = x - y - c->dpop_lambda * (x < 0 ? -x : 0), slope = -sigmoid(-u);
        t.l = -log_sigmoid(u);
        t.dlogp[0] = slope * (x < 0 ? 1 + c->dpop_lambda : 1);
        t.dlogp[1] = -slope;
    }
    }
    for (int k = 0; k < 2; k++) t.dlogp[k] *= c->beta;
    return t;
}

/* The loss of a pair: a[0] is chosen, a[1] rejected. aot, aot_unpaired and sft are losses of the whole batch and are
 * not handled here. */
static inline PreferenceTerm preference_pair(const PreferenceConfig *c, PreferenceLoss loss,
                                             const PreferenceCompletion *a) {
    PreferenceTerm t = {0};
    switch (loss) {
    case PREFERENCE_NCA_PAIR:
    case PREFERENCE_BCO_PAIR:
    case PREFERENCE_SPPO_HARD:
    case PREFERENCE_APO_ZERO:
    case PREFERENCE_APO_DOWN:
    case PREFERENCE_DPOP:
        return preference_of_ratios(c, loss, c->beta * (a[0].logp - a[0].ref), c->beta * (a[1].logp - a[1].ref));
    case PREFERENCE_ORPO: {
        const PreferenceValue w = preference_log_odds(a[0].plain / a[0].length),
                              l = preference_log_odds(a[1].plain / a[1].length);
        t.l = -c->beta * log_sigmoid(w.y - l.y);
        const double slope = -c->beta * sigmoid(l.y - w.y);
        t.dplain[0] = slope * w.dy / a[0].length;
        t.dplain[1] = -slope * l.dy / a[1].length;
        return t;
    }
    case PREFERENCE_SIMPO:
    case PREFERENCE_CPO:
    case PREFERENCE_TPO:
    case PREFERENCE_TPO_L: {
        const bool mean = loss == PREFERENCE_SIMPO || loss == PREFERENCE_TPO_L;
        const double gamma = loss == PREFERENCE_SIMPO ? c->simpo_gamma : loss == PREFERENCE_TPO_L ? c->tpo_l_gamma : 0;
        const double n[2] = {mean ? a[0].length : 1, mean ? a[1].length : 1};
        const PreferenceValue w = preference_shaped(c, loss, a[0].plain / n[0]),
                              l = preference_shaped(c, loss, a[1].plain / n[1]);
        const PreferenceValue v = preference_smoothed(c->beta * (w.y - l.y) - gamma, c->label_smoothing);
        t.l = v.y;
        t.dplain[0] = v.dy * c->beta * w.dy / n[0];
        t.dplain[1] = -v.dy * c->beta * l.dy / n[1];
        return t;
    }
    default: {
        const bool mean = loss == PREFERENCE_IPO || loss == PREFERENCE_SIGMOID_NORM;
        const double n[2] = {mean ? a[0].length : 1, mean ? a[1].length : 1};
        const PreferenceValue w = preference_divergence(c, a[0].logp - a[0].ref),
                              l = preference_divergence(c, a[1].logp - a[1].ref);
        const PreferenceValue v = preference_of_margin(c, loss, c->beta * (w.y / n[0] - l.y / n[1]));
        t.l = v.y;
        t.dlogp[0] = v.dy * c->beta * w.dy / n[0];
        t.dlogp[1] = -v.dy * c->beta * l.dy / n[1];
        return t;
    }
    }
}

/* ---- batch ----------------------------------------------------------------------------------------------------- */

/* Intermediate values of one pair: the derivatives of the loss with respect to each completion's sums, and the WPO
 * weight. */
typedef struct PreferencePair {
    PreferenceCompletion completion[2];
    double dlogp[2], dplain[2], weight;
} PreferencePair;

static inline int32_t preference_begin(const PreferenceBatch *b, int32_t i, int k) { return b->offset[4 * i + 1 + k]; }
static inline int32_t preference_end(const PreferenceBatch *b, int32_t i, int k) { return b->offset[4 * i + 2 + k]; }

/* LD-DPO's weight of token t (from 0) of a completion; the shorter completion of the pair has `shared` tokens. */
static inline double preference_ld(const PreferenceConfig *c, int32_t t, int32_t shared) {
    return t < shared ? 1 : c->ld_alpha;
}

static inline int32_t preference_shared(const PreferenceBatch *b, int32_t i) {
    const int32_t w = preference_end(b, i, 0) - preference_begin(b, i, 0);
    const int32_t l = preference_end(b, i, 1) - preference_begin(b, i, 1);
    return w < l ? w : l;
}

static inline PreferencePair preference_sums(const PreferenceConfig *c, const PreferenceBatch *b, int32_t i) {
    const int32_t shared = preference_shared(b, i);
    PreferencePair p = {.weight = 1};
    double log_weight = 0;
    for (int k = 0; k < 2; k++) {
        const int32_t begin = preference_begin(b, i, k), end = preference_end(b, i, k);
        PreferenceCompletion *a = &p.completion[k];
        double aligned = 0;
        for (int32_t t = begin; t < end; t++) {
            const double w = preference_ld(c, t - begin, shared);
            a->logp += w * b->logp[t];
            a->plain += b->logp[t];
            if (b->ref_logp) a->ref += w * b->ref_logp[t];
            if (c->use_weighting) aligned += (double)b->logp[t] - b->log_square[t];
        }
        a->length = fmax(end - begin, 1);
        log_weight += aligned / a->length;
    }
    if (c->use_weighting) p.weight = exp(log_weight);
    return p;
}

typedef struct PreferenceRank {
    double value;
    int32_t pair;
} PreferenceRank;

static inline int preference_by_value(const void *a, const void *b) {
    const PreferenceRank *x = (const PreferenceRank *)a, *y = (const PreferenceRank *)b;
    if (x->value != y->value) return x->value < y->value ? -1 : 1;
    return (x->pair > y->pair) - (x->pair < y->pair);
}

/* AOT compares the k-th smallest of one quantity with the k-th smallest of another: log pi(y_w)/pi(y_l) with the
 * reference's if `paired`, else c with r. `weight` is the weight of one pair. Returns the sum over the batch. */
static inline double preference_aot(const PreferenceConfig *c, PreferencePair *pair, int32_t n, bool paired,
                                    double weight) {
    PreferenceRank *u = (PreferenceRank *)xmalloc(2 * (size_t)n * sizeof *u), *v = u + n;
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        const PreferenceCompletion *w = &pair[i].completion[0], *l = &pair[i].completion[1];
        u[i] = (PreferenceRank){paired ? w->logp - l->logp : w->logp - w->ref, i};
        v[i] = (PreferenceRank){paired ? w->ref - l->ref : l->logp - l->ref, i};
    }
    qsort(u, (size_t)n, sizeof *u, preference_by_value);
    qsort(v, (size_t)n, sizeof *v, preference_by_value);
    for (int32_t k = 0; k < n; k++) {
        const PreferenceValue l = preference_smoothed(c->beta * (u[k].value - v[k].value), c->label_smoothing);
        const double slope = weight * c->beta * l.dy;
        sum += weight * l.y;
        pair[u[k].pair].dlogp[0] += slope;
        pair[paired ? u[k].pair : v[k].pair].dlogp[1] -= slope;
    }
    free(u);
    return sum;
}

/* The parts of a pair, from `begin` to before `end` as in PreferenceBatch's offsets, on whose tokens a loss has a negative
 * log-likelihood term, with this weight, as a mean over `tokens` of the whole optimizer batch. */
typedef struct PreferenceNll {
    int begin, end;
    double weight, tokens;
} PreferenceNll;

static inline PreferenceNll preference_nll_term(const PreferenceConfig *c, PreferenceLoss loss,
                                                const PreferenceNormaliser *n) {
    switch (loss) {
    case PREFERENCE_SFT: return (PreferenceNll){1, 2, 1, n->chosen_tokens};
    case PREFERENCE_CPO: return (PreferenceNll){1, 2, c->cpo_alpha, n->chosen_tokens};
    case PREFERENCE_ORPO: return (PreferenceNll){0, 2, 1, n->chosen_tokens + n->prompt_tokens};
    case PREFERENCE_TPO:
    case PREFERENCE_TPO_L: return (PreferenceNll){3, 4, c->tpo_alpha, n->gold_tokens};
    default: return (PreferenceNll){0};
    }
}

/* -weight times the mean of log pi over the tokens of a term. */
static inline double preference_nll(const PreferenceBatch *b, const PreferenceNll *x, double weight, float *dlogp) {
    double sum = 0;
    weight *= x->weight;
    for (int32_t i = 0; i < b->pairs; i++)
        for (int32_t t = b->offset[4 * i + x->begin]; t < b->offset[4 * i + x->end]; t++) {
            sum -= weight / x->tokens * b->logp[t];
            if (dlogp) dlogp[t] -= (float)(weight / x->tokens);
        }
    return sum;
}

/* The reward and the log-probability of a completion, as defined by the first loss. */
static inline double preference_reward(const PreferenceConfig *c, const PreferenceCompletion *a, double *logp) {
    const PreferenceLoss loss = c->loss[0];
    const bool mean = loss == PREFERENCE_ORPO || loss == PREFERENCE_SIMPO || loss == PREFERENCE_TPO_L;
    *logp = mean ? a->plain / a->length : loss == PREFERENCE_CPO || loss == PREFERENCE_TPO ? a->plain : a->logp;
    if (loss == PREFERENCE_ORPO) return c->beta * *logp;
    if (!preference_uses_reference(loss) && loss != PREFERENCE_SFT)
        return c->beta * preference_shaped(c, loss, *logp).y;
    return c->beta * (a->logp - a->ref);
}

static inline void preference_count(const PreferenceConfig *c, const PreferencePair *p, PreferenceStats *s) {
    double reward[2], logp[2];
    for (int k = 0; k < 2; k++) reward[k] = preference_reward(c, &p->completion[k], &logp[k]);
    s->pairs++;
    s->chosen += reward[0];
    s->rejected += reward[1];
    s->right += reward[0] > reward[1] ? 1 : reward[0] == reward[1] ? 0.5 : 0;
    s->chosen_logp += logp[0];
    s->rejected_logp += logp[1];
    s->chosen_ratio += p->completion[0].logp - p->completion[0].ref;
    s->rejected_ratio += p->completion[1].logp - p->completion[1].ref;
    s->weight += p->weight;
    if (!preference_has(c, PREFERENCE_ORPO)) return;
    const double odds = preference_log_odds(p->completion[0].plain / p->completion[0].length).y -
                        preference_log_odds(p->completion[1].plain / p->completion[1].length).y;
    s->log_odds += odds;
    s->log_odds_ratio += log_sigmoid(odds);
}

/* Returns the contribution of micro-batch `b`, in nats, to the loss of the batch that `n` describes. Adds to *stats.
 * dlogp is written per token, like b->logp; NULL skips it. NaN in, NaN out. */
static inline double preference_loss(const PreferenceConfig *c, const PreferenceNormaliser *n, const PreferenceBatch *b,
                                     float *dlogp, PreferenceStats *stats) {
    assert(c->losses && (!c->use_weighting || b->log_square));
    assert(!preference_sorts(c) || n->pairs == b->pairs);
    assert(!c->use_weighting || !preference_sorts(c));
    PreferencePair *pair = (PreferencePair *)xmalloc(((size_t)b->pairs + 1) * sizeof *pair);
    double loss = 0;
    for (int32_t i = 0; i < b->pairs; i++) {
        pair[i] = preference_sums(c, b, i);
        preference_count(c, &pair[i], stats);
        if (b->linear)
            for (int k = 0; k < 2; k++) {
                const double w = b->linear[2 * i + k] / n->pairs;
                loss += w * pair[i].completion[k].plain;
                pair[i].dplain[k] += w;
            }
    }
    const int32_t first = b->offset[0], last = b->offset[4 * b->pairs];
    if (dlogp)
        for (int32_t t = first; t < last; t++) dlogp[t] = 0;
    bool learned[4] = {false}; /* the parts of a pair with a negative log-likelihood term */
    for (int j = 0; j < c->losses; j++) {
        const PreferenceLoss kind = c->loss[j];
        const double share = c->weight[j] / n->pairs;
        if (kind == PREFERENCE_AOT || kind == PREFERENCE_AOT_UNPAIRED) {
            loss += preference_aot(c, pair, b->pairs, kind == PREFERENCE_AOT, share);
            continue;
        }
        const PreferenceNll nll = preference_nll_term(c, kind, n);
        for (int part = nll.begin; part < nll.end; part++) learned[part] = true;
        if (nll.weight != 0) loss += preference_nll(b, &nll, c->weight[j], dlogp);
        if (kind == PREFERENCE_SFT) continue;
        for (int32_t i = 0; i < b->pairs; i++) {
            const PreferenceTerm t = preference_pair(c, kind, pair[i].completion);
            loss += share * pair[i].weight * t.l;
            for (int k = 0; k < 2; k++) {
                pair[i].dlogp[k] += share * pair[i].weight * t.dlogp[k];
                pair[i].dplain[k] += share * pair[i].weight * t.dplain[k];
            }
        }
    }
    for (int32_t i = 0; i < b->pairs; i++) {
        const int32_t shared = preference_shared(b, i);
        if (dlogp)
            for (int k = 0; k < 2; k++)
                for (int32_t t = preference_begin(b, i, k); t < preference_end(b, i, k); t++)
                    dlogp[t] += (float)(pair[i].dlogp[k] * preference_ld(c, t - preference_begin(b, i, k), shared) +
                                        pair[i].dplain[k]);
        for (int part = 0; part < 4; part++) {
            if (!learned[part]) continue;
            for (int32_t t = b->offset[4 * i + part]; t < b->offset[4 * i + part + 1]; t++) {
                stats->nll -= b->logp[t];
                stats->nll_tokens++;
            }
        }
    }
    free(pair);
    stats->loss += loss;
    return loss;
}

/* Nash-MD (2312.00886): REINFORCE on the probability P of being preferred to a completion of the mixture policy, with a
 * KL penalty towards the reference, in TRL's form: sum_t (beta sg(log pi_t/ref_t) - (P - 1/2)) log pi_t. The batch
 * holds one completion per prompt, sampled from the policy, in place of the chosen one; probability: (pairs) P. Returns
 * the contribution to the mean over `total` completions; dlogp as above. */
static inline double nash_md_loss(double beta, double total, const PreferenceBatch *b, const float *probability,
                                  float *dlogp) {
    double loss = 0;
    for (int32_t i = 0; i < b->pairs; i++)
        for (int32_t t = preference_begin(b, i, 0); t < preference_end(b, i, 0); t++) {
            const double ratio = (double)b->logp[t] - b->ref_logp[t];
            const double slope = (beta * ratio - ((double)probability[i] - 0.5)) / total;
            loss += slope * b->logp[t];
            if (dlogp) dlogp[t] = (float)slope;
        }
    return loss;
}

/* ---- metrics --------------------------------------------------------------------------------------------------- */

enum { PREFERENCE_METRICS = 16 };

/* Computes the metrics that apply, under TRL's names, and returns their number. Not in TRL: logratios/chosen and
 * logratios/rejected (c and r, which show likelihood displacement) and wpo/weight. */
static inline int preference_metrics(const PreferenceConfig *c, const PreferenceStats *s,
                                     LossMetric out[PREFERENCE_METRICS]) {
    int n = 0;
    const double pairs = fmax(s->pairs, 1);
    METRIC("rewards/chosen", s->chosen / pairs);
    METRIC("rewards/rejected", s->rejected / pairs);
    METRIC("rewards/accuracies", s->right / pairs);
    METRIC("rewards/margins", (s->chosen - s->rejected) / pairs);
    METRIC("logps/chosen", s->chosen_logp / pairs);
    METRIC("logps/rejected", s->rejected_logp / pairs);
    if (preference_needs_reference(c)) {
        METRIC("logratios/chosen", s->chosen_ratio / pairs);
        METRIC("logratios/rejected", s->rejected_ratio / pairs);
    }
    if (preference_learns_chosen(c) || preference_uses_gold(c)) METRIC("nll_loss", s->nll / fmax(s->nll_tokens, 1));
    if (preference_has(c, PREFERENCE_ORPO)) {
        METRIC("log_odds_ratio", s->log_odds_ratio / pairs);
        METRIC("log_odds_chosen", s->log_odds / pairs);
    }
    if (c->use_weighting) METRIC("wpo/weight", s->weight / pairs);
    return n;
}

#endif
