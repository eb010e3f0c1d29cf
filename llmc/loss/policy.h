/* policy.h - policy-gradient losses of train_grpo, as functions of log-probabilities.
 *
 * One function, policy_loss(), takes the per-token log-probabilities of sampled completions and one advantage per
 * completion. It returns the loss and its gradient with respect to each log-probability (and each entropy). It needs no
 * model.
 *
 *   rho_t = pi(y_t) / pi_old(y_t)     s_i = (prod_t rho_t)^(1/T_i)     completion i has T_i tokens and advantage A_i
 *
 *   loss      l, the per-token loss                                         weight of a token          paper
 *   grpo      -min(rho A, clip(rho, 1-eps, 1+eps_high) A)                   1 / (B T_i)                2402.03300 eq. 3
 *   bnpo      the same                                                      1 / sum T_i                TRL
 *   dr_grpo   the same                                                      1 / (B max_length)         2503.20783
 *   dapo      the same                                                      1 / window tokens          2503.14476 eq. 8
 *   luspo     the same                                                      1 / B                      2602.05261
 *   gspo      the same with rho = s_i                                       1 / (B T_i)                2507.18071 eq. 5
 *   cispo     -sg(min(rho, eps_high)) A log pi                              1 / window tokens          2506.13585 eq. 4
 *   sapo      -4/tau sigmoid(tau (rho - 1)) A, tau depends on A's sign      1 / (B T_i)                2511.20347
 *   vespo     -sg(phi(W_i)) A log pi, W_i = prod_t rho_t,
 *             phi(W) = W^k e^(lambda (1 - W)), (k, lambda) by A's sign      1 / window tokens          2602.10693
 *   gmpo      -A (prod_t clip(rho_t))^(1/T_i), one-sided clip in log space  1 / (B T_i)                2507.20673
 *   rloo      the same with rho = prod_t rho_t                              1 / (B T_i)                2402.14740
 *   dppo      -rho A; 0 where A > 0 and pi - pi_old > eps_high, or A < 0
 *             and pi - pi_old < -eps; + tau (log rho)^2                     1 / sum T_i                2602.04879
 *   clip_cov  as grpo, but 0 for the tokens chosen by covariance            1 / sum T_i                2505.22617
 *   kl_cov    -rho A; + c |log rho| for the tokens chosen by covariance     1 / sum T_i                2505.22617
 *
 * "The same" refers to grpo; sg is stop-gradient. First l is multiplied by the off-policy mask and the top-entropy
 * mask. Then the KL term beta k is added; it is neither masked nor clipped. Finally, entropy_coef times the mean
 * entropy is subtracted from the loss. Formulas and defaults are those of TRL 1.16 (GRPOTrainer, GMPOTrainer,
 * RLOOTrainer; tests/golden/losses.txt holds values computed by TRL's code), with two exceptions. The default clip
 * ranges of gspo, luspo and cispo are those that TRL's documentation recommends (without them, TRL's cispo silently
 * scales every gradient by 0.2). The loss value of gmpo excludes masked completions.
 *
 * dppo is the loss of prime-rl (default_loss_fn: binary total variation, with the KL term of Kimi K2.5, 2602.02276), clip_cov
 * and kl_cov are those of verl (compute_policy_loss_clip_cov, compute_policy_loss_kl_cov). covariance.h chooses the tokens
 * of the last two. tests/golden/losses_peers.txt holds values computed by the code of both.
 *
 * Completions that another policy wrote (PolicyBatch.off_policy) have the ratio of off_policy.h with any loss, beside the
 * same weight, KL term and entropy bonus; no ratio to pi_old, clip or mask applies to them. With grpo's clip for the others,
 * this is LUFFY's loss (2504.14945). Its normaliser Z, the tokens of all completions, is that of dapo.
 * tests/golden/off_policy.txt holds values computed by its code.
 *
 * B and the token counts are those of the WHOLE optimizer batch (PolicyNormaliser). The losses and gradients of
 * micro-batches therefore add up to those of the batch, wherever it is split between completions.
 *
 *     PolicyLossConfig c = policy_loss_config(POLICY_DAPO);
 *     PolicyNormaliser n = policy_normaliser(offset, B, counts, NULL);          // the global batch
 *     PolicyStats stats = policy_stats();
 *     for (each micro-batch) {
 *         loss += policy_loss(&c, &n, &b, dlogp, NULL, &stats);
 *         model_backward(&model, &work, &batch, 1.0f, dlogp, NULL, NULL);     // model/transformer.h
 *     }
 *     LossMetric metric[POLICY_METRICS];
 *     int count = policy_metrics(&c, &stats, metric);
 */
#ifndef LLMC_LOSS_POLICY_H
#define LLMC_LOSS_POLICY_H

#include "../base/error.h" /* xmalloc */
#include "aggregation.h"   /* AGG_SEQ_MEAN_TOKEN_MEAN, AGG_SEQ_MEAN_TOKEN_SUM, AGG_SEQ_MEAN_TOKEN_SUM_NORM, ... */
#include "kl.h"            /* KL_K3, KlEstimator, kl_estimate */
#include "off_policy.h"    /* OffPolicy, off_policy_default, off_policy_ratio */
#include "scalar.h"        /* METRIC, clamp, LossMetric */
#include <assert.h>

#define POLICY_LOSS_CHOICES "grpo|bnpo|dr_grpo|dapo|gspo|cispo|sapo|luspo|vespo|gmpo|rloo|dppo|clip_cov|kl_cov"
/* in the order of POLICY_LOSS_CHOICES */
typedef enum {
    POLICY_GRPO,
    POLICY_BNPO,
    POLICY_DR_GRPO,
    POLICY_DAPO,
    POLICY_GSPO,
    POLICY_CISPO,
    POLICY_SAPO,
    POLICY_LUSPO,
    POLICY_VESPO,
    POLICY_GMPO,
    POLICY_RLOO,
    POLICY_DPPO,
    POLICY_CLIP_COV,
    POLICY_KL_COV
} PolicyLossKind;

#define IMPORTANCE_CHOICES "token|sequence"
typedef enum { IMPORTANCE_TOKEN, IMPORTANCE_SEQUENCE } Importance; /* in the order of IMPORTANCE_CHOICES */

/* The constants of single losses. */
typedef struct PolicyShape {
    double sapo_temperature_positive, sapo_temperature_negative;
    double vespo_k_positive, vespo_lambda_positive, vespo_k_negative, vespo_lambda_negative;
    double kl_tau;                      /* dppo: weight of (log rho)^2 */
    double clip_cov_ratio;              /* clip_cov: fraction of the tokens */
    double clip_cov_low, clip_cov_high; /* clip_cov: range of their covariance */
    double kl_cov_ratio, kl_cov_coef;   /* kl_cov: fraction of the tokens, weight of |log rho| */
} PolicyShape;

typedef struct PolicyLossConfig {
    PolicyLossKind loss;
    LossAggregation aggregation;  /* set by `loss`; train_ppo may choose another */
    Importance importance;        /* level of rho; ignored by gspo (sequence), rloo (product) and gmpo, dppo, clip_cov,
                                     kl_cov (token) */
    double epsilon, epsilon_high; /* clip range [1 - epsilon, 1 + epsilon_high]; gmpo: [-epsilon, epsilon_high] of
                                     log rho; cispo: epsilon_high caps rho itself; dppo: [-epsilon, epsilon_high] of
                                     pi - pi_old */
    double delta;                 /* two-sided clip: rho <= delta if A < 0 (INTELLECT-2: 2505.07291); 0: none */
    double beta;                  /* weight of the KL term; with 0 no reference is needed */
    KlEstimator kl;               /* TRL uses k3 */
    bool kl_bias_correction;      /* multiplies the KL term by rho (DeepSeek-V3.2: 2512.02556); ignored by gmpo */
    double entropy_coef;          /* weight of the entropy bonus */
    double off_policy_mask;       /* completions with A < 0 and mean(log mu - log pi) above this are excluded
                                (DeepSeek-V3.2, eq. 9); 0: none */
    double max_completion_length; /* norm of seq-mean-token-sum-norm (dr_grpo) */
    PolicyShape shape;            /* the constants of single losses */
    OffPolicy off_policy;         /* the ratio of completions that another policy wrote */
} PolicyLossConfig;

/* Whether the mean of a loss is over the tokens of all completions sampled together (PolicyNormaliser). */
static inline bool policy_by_window(PolicyLossKind loss) {
    return loss == POLICY_DAPO || loss == POLICY_CISPO || loss == POLICY_VESPO;
}

/* Whether the loss treats tokens in another way that covariance.h chooses. */
static inline bool policy_by_covariance(PolicyLossKind loss) {
    return loss == POLICY_CLIP_COV || loss == POLICY_KL_COV;
}

/* Whether the mean of a loss is over the tokens of the optimizer batch. */
static inline bool policy_by_token(PolicyLossKind loss) {
    return loss == POLICY_BNPO || loss == POLICY_DPPO || policy_by_window(loss) || policy_by_covariance(loss);
}

/* Returns the default configuration of a loss. */
static inline PolicyLossConfig policy_loss_config(PolicyLossKind loss) {
    PolicyLossConfig c = {.loss = loss,
                          .aggregation = AGG_SEQ_MEAN_TOKEN_MEAN,
                          .epsilon = 0.2,
                          .epsilon_high = 0.2,
                          .kl = KL_K3,
                          .kl_bias_correction = true,
                          .max_completion_length = 512,
                          .off_policy = off_policy_default(),
                          .shape = {.sapo_temperature_positive = 1.0,
                                    .sapo_temperature_negative = 1.05,
                                    .vespo_k_positive = 2,
                                    .vespo_lambda_positive = 3,
                                    .vespo_k_negative = 3,
                                    .vespo_lambda_negative = 2,
                                    .kl_tau = 1e-3,
                                    .clip_cov_ratio = 2e-4,
                                    .clip_cov_low = 1,
                                    .clip_cov_high = 5,
                                    .kl_cov_ratio = 2e-4,
                                    .kl_cov_coef = 1}};
    if (loss == POLICY_GSPO) {
        c.importance = IMPORTANCE_SEQUENCE;
        c.epsilon = 3e-4;
        c.epsilon_high = 4e-4;
    }
    if (loss == POLICY_LUSPO) {
        c.importance = IMPORTANCE_SEQUENCE;
        c.epsilon = 2e-3;
        c.epsilon_high = 2.5e-3;
    }
    if (policy_by_token(loss)) c.aggregation = AGG_TOKEN_MEAN;
    if (loss == POLICY_DR_GRPO) c.aggregation = AGG_SEQ_MEAN_TOKEN_SUM_NORM;
    if (loss == POLICY_LUSPO) c.aggregation = AGG_SEQ_MEAN_TOKEN_SUM;
    if (loss == POLICY_CISPO) c.epsilon_high = 5; /* ScaleRL: Khatri et al. 2025 (2510.13786) */
    if (loss == POLICY_GMPO) {
        c.epsilon = 0.4;
        c.epsilon_high = 0.4;
    }
    return c;
}

/* A micro-batch of whole completions. Tokens of completion i are [offset[i], offset[i+1]) of every per-token array. */
typedef struct PolicyBatch {
    int32_t completions;
    const int32_t *offset;        /* (completions + 1) */
    const float *advantage;       /* (completions) */
    const float *token_advantage; /* per token, added to that of its completion; NULL: 0 */
    const uint8_t *counts;        /* (completions) 0 excludes the completion (truncated); NULL: all count */
    const float *logp;            /* log pi(y_t), the policy being trained */
    const float *old_logp;        /* log pi_old(y_t), the policy at the start of the step; NULL: pi itself (rho = 1) */
    const float *ref_logp;        /* log-probabilities of the reference, or NULL if beta is 0 */
    const float *sampler_logp;    /* log mu(y_t), recorded while sampling; NULL: old_logp */
    const float *entropy;         /* of pi at each token, or NULL if entropy_coef is 0 */
    const uint8_t *keep;          /* top-entropy mask from policy_entropy_keep(); NULL: keeps all */
    const uint8_t *chosen;        /* clip_cov, kl_cov: 1 for the tokens of covariance_choose(); NULL: none */
    const uint8_t *off_policy;    /* (completions) 1: another policy wrote it; NULL: the policy sampled all */
} PolicyBatch;

/* Sums over the whole optimizer batch. */
typedef struct PolicyNormaliser {
    double completions;   /* B: all completions, excluded ones too */
    double tokens;        /* tokens of the completions that count */
    double window_tokens; /* dapo, cispo, vespo: tokens of all completions sampled together / optimizer steps per pass
                             over them; policy_normaliser() sets it to `tokens`, which is correct for one step */
    double kept_tokens;   /* tokens that count and are kept; normaliser of the entropy bonus */
} PolicyNormaliser;

static inline PolicyNormaliser policy_normaliser(const int32_t *offset, int32_t completions, const uint8_t *counts,
                                                 const uint8_t *keep) {
    PolicyNormaliser n = {.completions = completions};
    for (int32_t i = 0; i < completions; i++) {
        if (counts && !counts[i]) continue;
        n.tokens += offset[i + 1] - offset[i];
        for (int32_t t = offset[i]; t < offset[i + 1]; t++) n.kept_tokens += keep ? keep[t] != 0 : 1;
    }
    n.window_tokens = n.tokens;
    return n;
}

/* Totals over micro-batches, starting from policy_stats(); policy_metrics() turns them into means. The three parts
 * contain doubles only, so that ranks can add them and take their maxima and minima (dist.h). */
typedef struct PolicyStats {
    struct {
        double completions, counted, tokens;   /* completions; those that count; their tokens */
        double loss, policy_loss, kl, entropy; /* policy_loss: before the entropy bonus */
        double kept, kept_entropy;             /* tokens with an entropy that the top-entropy mask keeps */
        double low, high, region;              /* clipped tokens; completions if rho is per completion */
        double phi;                            /* vespo */
        double ratio, square_log;              /* per token: rho, (log rho)^2 */
        double sampled, sampler_gap;           /* tokens with a log mu; |log pi_old - log mu| */
        double off_tokens, off_ratio, off_p;   /* tokens of another policy, in no other sum but the losses and `kept`;
                                                  f(p), p */
    } sum;
    struct {
        double high;                /* fraction of the tokens of a completion that are clipped above */
        double ratio, ratio_gap;    /* rho, |rho - 1| */
        double sampler_gap;         /* |log pi_old - log mu| */
        double has_kl, has_entropy; /* 1 if the loss has a KL term; 1 if there are entropies */
    } max;
    struct {
        double low; /* fraction of the tokens of a completion that are clipped below */
    } min;
} PolicyStats;

static inline PolicyStats policy_stats(void) {
    return (PolicyStats){.max = {.high = -INFINITY, .ratio = -INFINITY}, .min = {.low = INFINITY}};
}

/* -- loss of one token -------------------------------------------------------------------------------------------- */

/* l and its derivatives with respect to log pi (rho held constant) and with respect to rho. */
typedef struct PolicyTerm {
    double l, dlogp, drho;
} PolicyTerm;

/* Clipped surrogate (Schulman et al. 2017, eq. 7) with separate bounds (DAPO) and an upper bound delta (INTELLECT-2):
 *   l = -min(min(rho, delta) A, clip(rho, 1 - eps, 1 + eps_high) A) */
static inline PolicyTerm policy_clip(const PolicyLossConfig *c, double rho, double A) {
    const double capped = clamp(rho, -INFINITY, c->delta > 0 ? c->delta : INFINITY);
    const double clipped = clamp(rho, 1 - c->epsilon, 1 + c->epsilon_high);
    const double least = clipped * A < capped * A ? clipped : capped;
    return (PolicyTerm){.l = -least * A, .drho = least == rho ? -A : 0};
}

/* CISPO: l = -sg(min(rho, eps_high)) A log pi; the weight is never 0, so every token keeps a gradient. */
static inline PolicyTerm policy_cispo(const PolicyLossConfig *c, double rho, double A, double logp) {
    const double weight = clamp(rho, -INFINITY, c->epsilon_high);
    return (PolicyTerm){.l = -weight * A * logp, .dlogp = -weight * A};
}

/* SAPO: l = -4/tau sigmoid(tau (rho - 1)) A; the slope is -A at rho = 1. */
static inline PolicyTerm policy_sapo(const PolicyLossConfig *c, double rho, double A) {
    const double tau = A > 0 ? c->shape.sapo_temperature_positive : c->shape.sapo_temperature_negative;
    const double sigmoid = 1 / (1 + exp(-tau * (rho - 1)));
    return (PolicyTerm){.l = -4 / tau * sigmoid * A, .drho = -4 * sigmoid * (1 - sigmoid) * A};
}

/* DPPO (2602.04879): l = -rho A + tau d^2 with d = log rho; a token whose probability has left the trust region
 * [-eps, eps_high] in the direction of A has only the last term. change: pi - pi_old */
static inline PolicyTerm policy_dppo(const PolicyLossConfig *c, double d, double change, double A) {
    const bool left = (A > 0 && change > c->epsilon_high) || (A < 0 && change < -c->epsilon);
    const PolicyTerm p = {.l = c->shape.kl_tau * d * d, .dlogp = 2 * c->shape.kl_tau * d};
    return left ? p : (PolicyTerm){.l = p.l - exp(d) * A, .dlogp = p.dlogp, .drho = -A};
}

/* KL-Cov (Cui et al. 2025): l = -rho A, + coef |d| with d = log rho for a chosen token. The slope of |d| at 0 is 0. */
static inline PolicyTerm policy_kl_cov(const PolicyLossConfig *c, double d, double A, bool chosen) {
    const double coef = chosen ? c->shape.kl_cov_coef : 0;
    return (PolicyTerm){.l = coef * fabs(d) - exp(d) * A, .dlogp = d > 0 ? coef : d < 0 ? -coef : 0, .drho = -A};
}

/* VESPO: l = -sg(phi) A log pi. */
static inline PolicyTerm policy_vespo(double phi, double A, double logp) {
    return (PolicyTerm){.l = -phi * A * logp, .dlogp = -phi * A};
}

/* Weight of one token of a completion of T tokens. */
static inline double policy_token_weight(const PolicyLossConfig *c, const PolicyNormaliser *n, int32_t T) {
    const LossNormaliser all = {.mode = c->aggregation,
                                .tokens = policy_by_window(c->loss) ? n->window_tokens : n->tokens,
                                .completions = n->completions,
                                .norm = c->max_completion_length};
    return 1 / loss_divisor(&all, T);
}

/* -- one completion ----------------------------------------------------------------------------------------------- */

static inline double policy_log_ratio(const PolicyBatch *b, int32_t t) {
    return b->old_logp ? (double)b->logp[t] - b->old_logp[t] : 0;
}

/* pi(y_t) - pi_old(y_t) */
static inline double policy_probability_change(const PolicyBatch *b, int32_t t) {
    return b->old_logp ? exp((double)b->logp[t]) - exp((double)b->old_logp[t]) : 0;
}

/* Returns whether rho is per completion. */
static inline bool policy_by_sequence(const PolicyLossConfig *c) {
    if (c->loss == POLICY_GSPO || c->loss == POLICY_GMPO || c->loss == POLICY_RLOO) return true;
    if (c->loss == POLICY_DPPO || policy_by_covariance(c->loss)) return false;
    return c->importance == IMPORTANCE_SEQUENCE;
}

/* GMPO's one-sided clip of log rho: min(d, eps_high) if A > 0, else max(d, -eps). */
static inline double policy_gmpo_clip(const PolicyLossConfig *c, double d, double A) {
    return A > 0 ? (d > c->epsilon_high ? c->epsilon_high : d) : (d < -c->epsilon ? -c->epsilon : d);
}

/* Returns rho of completion i. *share is d log rho / d log pi_t, the same for all its tokens (in gmpo 0 for tokens that
 * are clipped or not kept: policy_share()). */
static inline double policy_sequence_ratio(const PolicyLossConfig *c, const PolicyBatch *b, int32_t i, double *share) {
    double sum = 0, count = 0;
    for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) {
        const double d = policy_log_ratio(b, t);
        if (c->loss != POLICY_GMPO) {
            sum += d;
            count++;
        } else if (!b->keep || b->keep[t]) {
            sum += policy_gmpo_clip(c, d, b->advantage[i]);
            count++;
        }
    }
    *share = c->loss == POLICY_RLOO ? 1 : 1 / fmax(count, 1);
    return exp(*share * sum);
}

static inline double policy_share(const PolicyLossConfig *c, const PolicyBatch *b, int32_t i, int32_t t, double share) {
    if (c->loss != POLICY_GMPO) return share;
    const double d = policy_log_ratio(b, t);
    return (!b->keep || b->keep[t]) && policy_gmpo_clip(c, d, b->advantage[i]) == d ? share : 0;
}

/* phi(W) = W^k e^(lambda (1 - W)) in log space; W is clamped to [1e-8, e^20], each log rho_t to [-20, 20]. */
static inline double policy_vespo_phi(const PolicyLossConfig *c, const PolicyBatch *b, int32_t i) {
    const bool positive = b->advantage[i] >= 0;
    const double k = positive ? c->shape.vespo_k_positive : c->shape.vespo_k_negative;
    const double lambda = fmax(positive ? c->shape.vespo_lambda_positive : c->shape.vespo_lambda_negative, 1e-4);
    double log_W = 0;
    for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) log_W += clamp(policy_log_ratio(b, t), -20, 20);
    log_W = clamp(log_W, log(1e-8), 20);
    return exp(lambda + k * log_W - lambda * exp(log_W));
}

/* DeepSeek-V3.2's off-policy mask keeps a completion if A >= 0 or mean_t(log mu - log pi) <= threshold. */
static inline bool policy_off_policy_keeps(const PolicyLossConfig *c, const PolicyBatch *b, int32_t i) {
    const float *mu = b->sampler_logp ? b->sampler_logp : b->old_logp;
    if (c->off_policy_mask <= 0 || b->advantage[i] >= 0 || !mu) return true;
    double sum = 0;
    for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++)
        if (!isnan(mu[t])) sum += (double)mu[t] - b->logp[t];
    return sum / fmax(b->offset[i + 1] - b->offset[i], 1) <= c->off_policy_mask;
}

static inline void policy_count_token(PolicyStats *s, const PolicyBatch *b, int32_t t) {
    const double d = policy_log_ratio(b, t), rho = exp(d);
    s->sum.tokens++;
    s->sum.ratio += rho;
    s->sum.square_log += d * d;
    s->max.ratio = rho > s->max.ratio ? rho : s->max.ratio;
    s->max.ratio_gap = fabs(rho - 1) > s->max.ratio_gap ? fabs(rho - 1) : s->max.ratio_gap;
    if (b->sampler_logp && !isnan(b->sampler_logp[t])) {
        const double gap = fabs((double)(b->old_logp ? b->old_logp[t] : b->logp[t]) - b->sampler_logp[t]);
        s->sum.sampler_gap += gap;
        s->sum.sampled++;
        s->max.sampler_gap = gap > s->max.sampler_gap ? gap : s->max.sampler_gap;
    }
}

/* Determines whether rho, or the change of the probability, is outside the clip range on the side that removes the gradient.
 * change: pi - pi_old, of dppo. *low and *high use strict comparisons, as TRL's metrics do. */
static inline void policy_is_clipped(const PolicyLossConfig *c, double rho, double change, double A, bool *low,
                                     bool *high) {
    const bool gmpo = c->loss == POLICY_GMPO, cispo = c->loss == POLICY_CISPO;
    *low = *high = false;
    if (c->loss == POLICY_KL_COV) return;
    if (c->loss == POLICY_DPPO) {
        *low = A < 0 && change < -c->epsilon;
        *high = A > 0 && change > c->epsilon_high;
        return;
    }
    const double x = gmpo ? log(rho) : clamp(rho, -INFINITY, c->delta > 0 && !cispo ? c->delta : INFINITY);
    *low = x < (gmpo ? 0 : 1) - c->epsilon && A < 0 && !cispo;
    *high = x > (gmpo || cispo ? 0 : 1) + c->epsilon_high && A > 0;
}

/* The advantage of token t of completion i. */
static inline double policy_token_advantage(const PolicyBatch *b, int32_t i, int32_t t) {
    return (double)b->advantage[i] + (b->token_advantage ? (double)b->token_advantage[t] : 0);
}

/* -- loss of a micro-batch ---------------------------------------------------------------------------------------- */

/* Adds completion i to the stats, writes dlogp and dentropy of its tokens, and returns its contribution to the loss. */
static inline double policy_loss_sequence(const PolicyLossConfig *c, const PolicyNormaliser *n, const PolicyBatch *b,
                                          int32_t i, float *dlogp, float *dentropy, PolicyStats *stats) {
    const int32_t begin = b->offset[i], end = b->offset[i + 1];
    const double w = policy_token_weight(c, n, end - begin);
    const bool by_sequence = policy_by_sequence(c), gmpo = c->loss == POLICY_GMPO,
               keeps = policy_off_policy_keeps(c, b, i);
    const bool metric_by_sequence = by_sequence && !gmpo, corrected = c->kl_bias_correction && !gmpo;
    const double phi = c->loss == POLICY_VESPO ? policy_vespo_phi(c, b, i) : 0;
    double share = 0, dloss_drho = 0, policy = 0, bonus = 0, low = 0, high = 0;
    const double s = by_sequence ? policy_sequence_ratio(c, b, i, &share) : 0;
    for (int32_t t = begin; t < end; t++) {
        const double token_rho = exp(policy_log_ratio(b, t)), rho = by_sequence ? s : token_rho;
        const double A = policy_token_advantage(b, i, t);
        const double change = c->loss == POLICY_DPPO ? policy_probability_change(b, t) : 0;
        const bool chosen = b->chosen && b->chosen[t];
        PolicyTerm p;
        switch (c->loss) {
        case POLICY_CISPO: p = policy_cispo(c, rho, A, b->logp[t]); break;
        case POLICY_SAPO: p = policy_sapo(c, rho, A); break;
        case POLICY_VESPO: p = policy_vespo(phi, A, b->logp[t]); break;
        case POLICY_GMPO: p = (PolicyTerm){.l = -rho * A, .drho = -A}; break;
        case POLICY_DPPO: p = policy_dppo(c, policy_log_ratio(b, t), change, A); break;
        case POLICY_CLIP_COV: p = chosen ? (PolicyTerm){0} : policy_clip(c, rho, A); break;
        case POLICY_KL_COV: p = policy_kl_cov(c, policy_log_ratio(b, t), A, chosen); break;
        default: p = policy_clip(c, rho, A);
        }
        const bool kept = !b->keep || b->keep[t];
        if (!keeps || (!kept && !gmpo)) p = (PolicyTerm){0}; /* gmpo excludes the token from rho */
        if (b->ref_logp) {
            double dk;
            const double k = kl_estimate(c->kl, (double)b->logp[t] - b->ref_logp[t], &dk);
            const double factor = corrected ? rho : 1;
            p.l += c->beta * factor * k;
            p.dlogp += c->beta * factor * dk;
            if (corrected) p.drho += c->beta * k;
            stats->sum.kl += factor * k;
            stats->max.has_kl = 1;
        }
        policy += w * p.l;
        dloss_drho += w * p.drho;
        if (dlogp) dlogp[t] = (float)(w * (p.dlogp + (by_sequence ? 0 : p.drho * rho)));
        if (kept && c->entropy_coef != 0) bonus += c->entropy_coef * b->entropy[t] / fmax(n->kept_tokens, 1);
        if (dentropy) dentropy[t] = kept ? (float)(-c->entropy_coef / fmax(n->kept_tokens, 1)) : 0;
        bool is_low, is_high;
        policy_is_clipped(c, metric_by_sequence ? s : token_rho, change, A, &is_low, &is_high);
        low += is_low;
        high += is_high;
        policy_count_token(stats, b, t);
    }
    if (by_sequence && dlogp)
        for (int32_t t = begin; t < end; t++) dlogp[t] += (float)(dloss_drho * s * policy_share(c, b, i, t, share));
    const double count = metric_by_sequence && end > begin ? end - begin : 1, length = end - begin;
    stats->sum.low += low / count;
    stats->sum.high += high / count;
    stats->sum.region += (low + high) / count;
    if (length > 0) stats->min.low = fmin(stats->min.low, low / length);
    if (length > 0) stats->max.high = fmax(stats->max.high, high / length);
    stats->sum.counted++;
    stats->sum.phi += phi;
    stats->sum.policy_loss += policy;
    return policy - bonus;
}

/* The same for a completion that another policy wrote. The KL term is not multiplied by a ratio. */
static inline double policy_off_policy_sequence(const PolicyLossConfig *c, const PolicyNormaliser *n,
                                                const PolicyBatch *b, int32_t i, float *dlogp, float *dentropy,
                                                PolicyStats *stats) {
    const double w = policy_token_weight(c, n, b->offset[i + 1] - b->offset[i]);
    const double coef = c->entropy_coef / fmax(n->kept_tokens, 1);
    double policy = 0, bonus = 0;
    for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) {
        const double A = policy_token_advantage(b, i, t);
        double slope, dk = 0, k = 0;
        const double ratio = off_policy_ratio(&c->off_policy, (double)b->logp[t], &slope);
        if (b->ref_logp) k = kl_estimate(c->kl, (double)b->logp[t] - b->ref_logp[t], &dk);
        policy += w * (c->beta * k - ratio * A);
        if (dlogp) dlogp[t] = (float)(w * (c->beta * dk - slope * A));
        if (c->entropy_coef != 0) bonus += coef * b->entropy[t];
        if (dentropy) dentropy[t] = (float)-coef;
        stats->sum.off_tokens++;
        stats->sum.off_ratio += ratio;
        stats->sum.off_p += exp((double)b->logp[t]);
    }
    stats->sum.policy_loss += policy;
    return policy - bonus;
}

/* Adds the entropies of micro-batch `b` to *stats: for a caller who did not have them in policy_loss(). Those of another
 * policy's completions are only in `kept_entropy`. */
static inline void policy_stats_entropy(const PolicyBatch *b, PolicyStats *stats) {
    for (int32_t i = 0; i < b->completions; i++) {
        const bool sampled = !b->off_policy || !b->off_policy[i];
        for (int32_t t = b->offset[i]; t < b->offset[i + 1] && (!b->counts || b->counts[i]); t++) {
            if (sampled) {
                stats->max.has_entropy = 1;
                stats->sum.entropy += b->entropy[t];
            }
            if (b->keep && !b->keep[t]) continue;
            stats->sum.kept++;
            stats->sum.kept_entropy += b->entropy[t];
        }
    }
}

/* Returns the contribution of micro-batch `b`, in nats, to the loss of the batch that `n` describes. Adds to *stats.
 * dlogp and dentropy are written per token, like b->logp (0 for excluded completions); NULL skips them. dentropy is
 * required if entropy_coef is not 0 and dlogp is given. NaN in, NaN out. */
static inline double policy_loss(const PolicyLossConfig *c, const PolicyNormaliser *n, const PolicyBatch *b,
                                 float *dlogp, float *dentropy, PolicyStats *stats) {
    assert(c->beta == 0 || b->ref_logp);
    assert(c->entropy_coef == 0 || (b->entropy && (dentropy || !dlogp)));
    double loss = 0;
    for (int32_t i = 0; i < b->completions; i++) {
        const bool off_policy = b->off_policy && b->off_policy[i];
        stats->sum.completions += !off_policy;
        if (!b->counts || b->counts[i]) {
            loss +=
                (off_policy ? policy_off_policy_sequence : policy_loss_sequence)(c, n, b, i, dlogp, dentropy, stats);
            continue;
        }
        const int32_t begin = b->offset[i], length = b->offset[i + 1] - begin;
        if (dlogp && length) memset(dlogp + begin, 0, (size_t)length * sizeof *dlogp);
        if (dentropy && length) memset(dentropy + begin, 0, (size_t)length * sizeof *dentropy);
        if (off_policy) continue;
        if (policy_by_sequence(c) && c->loss != POLICY_GMPO) { /* TRL counts it, with rho = 1 */
            stats->min.low = fmin(stats->min.low, 0);
            stats->max.high = fmax(stats->max.high, 0);
        }
        stats->sum.phi += 1;
    }
    if (b->entropy) policy_stats_entropy(b, stats);
    stats->sum.loss += loss;
    return loss;
}

/* -- metrics ------------------------------------------------------------------------------------------------------ */

enum { POLICY_METRICS = 20 };

/* Computes the metrics that apply, under TRL's names, and returns their number. Not in TRL: ratio/mean, ratio/max,
 * onpolicy/max_abs_ratio_minus_1 (all per token), policy/approxkl_avg = mean (log rho)^2 / 2, and off_policy/...: of the
 * tokens that another policy wrote, their fraction of all, and the means of p and f(p). */
static inline int policy_metrics(const PolicyLossConfig *c, const PolicyStats *s, LossMetric out[POLICY_METRICS]) {
    int n = 0;
    const double tokens = fmax(s->sum.tokens, 1);
    const bool by_sequence = policy_by_sequence(c) && c->loss != POLICY_GMPO;
    const double clipped = by_sequence ? fmax(s->sum.completions, 1) : tokens;
    if (s->max.has_kl) METRIC("kl", s->sum.kl / tokens);
    if (s->max.has_entropy) METRIC("entropy", s->sum.entropy / tokens);
    if (c->entropy_coef != 0) METRIC("policy_loss", s->sum.policy_loss);
    if (c->loss == POLICY_CISPO) METRIC("cispo_clip_ratio", s->sum.high / clipped);
    else if (c->loss == POLICY_VESPO) METRIC("vespo/phi_seq_mean", s->sum.phi / fmax(s->sum.completions, 1));
    else if (c->loss != POLICY_SAPO && c->loss != POLICY_KL_COV) {
        METRIC("clip_ratio/low_mean", s->sum.low / clipped);
        METRIC("clip_ratio/low_min", isfinite(s->min.low) ? s->min.low : NAN);
        METRIC("clip_ratio/high_mean", s->sum.high / clipped);
        METRIC("clip_ratio/high_max", isfinite(s->max.high) ? s->max.high : NAN);
        METRIC("clip_ratio/region_mean", s->sum.region / clipped);
    }
    METRIC("ratio/mean", s->sum.tokens ? s->sum.ratio / tokens : NAN);
    METRIC("ratio/max", s->sum.tokens ? s->max.ratio : NAN);
    METRIC("onpolicy/max_abs_ratio_minus_1", s->max.ratio_gap);
    METRIC("policy/approxkl_avg", s->sum.square_log / (2 * s->sum.tokens));
    if (s->sum.sampled) {
        METRIC("sampling/sampling_logp_difference/mean", s->sum.sampler_gap / s->sum.sampled);
        METRIC("sampling/sampling_logp_difference/max", s->max.sampler_gap);
    }
    if (s->sum.off_tokens > 0) {
        METRIC("off_policy/tokens", s->sum.off_tokens / (s->sum.tokens + s->sum.off_tokens));
        METRIC("off_policy/prob", s->sum.off_p / s->sum.off_tokens);
        METRIC("off_policy/ratio_mean", s->sum.off_ratio / s->sum.off_tokens);
    }
    return n;
}

/* -- entropy ------------------------------------------------------------------------------------------------------ */

static inline int policy_compare_floats(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The top-entropy mask ("80/20": Wang et al. 2025, 2506.01939): keep[t] = 1 if the token's entropy is at least
 * the (1 - rho) quantile (linear interpolation) over all tokens of the batch that count. offset and counts describe the
 * whole optimizer batch; entropy and keep are per token. Returns the quantile, or NaN if no token counts. */
static inline double policy_entropy_keep(const float *entropy, const int32_t *offset, int32_t completions,
                                         const uint8_t *counts, double rho, uint8_t *keep) {
    const int32_t first = offset[0], last = offset[completions];
    float *sorted = (float *)xmalloc((size_t)(last - first) * sizeof *sorted);
    size_t n = 0;
    memset(keep + first, 0, (size_t)(last - first));
    for (int32_t i = 0; i < completions; i++)
        if (!counts || counts[i])
            for (int32_t t = offset[i]; t < offset[i + 1]; t++) sorted[n++] = entropy[t];
    qsort(sorted, n, sizeof *sorted, policy_compare_floats);
    double threshold = NAN;
    if (n) {
        const double place = (1 - rho) * (double)(n - 1);
        const size_t below = (size_t)place, above = below + 1 < n ? below + 1 : below;
        threshold = sorted[below] + (place - (double)below) * ((double)sorted[above] - sorted[below]);
    }
    free(sorted);
    for (int32_t i = 0; i < completions; i++)
        if (!counts || counts[i])
            for (int32_t t = offset[i]; t < offset[i + 1]; t++) keep[t] = entropy[t] >= threshold;
    return threshold;
}

/* Adaptive entropy coefficient (Skywork-OR1: He et al. 2025, 2505.22312). It moves in steps of `delta` towards a
 * target entropy. The bonus is applied only if the last step's mean entropy was not above the target. `coef` and `last`
 * are its state. */
typedef struct EntropyControl {
    double target, delta, low, high;
    double coef, last;
} EntropyControl;

/* TRL's defaults. */
static inline EntropyControl entropy_control(double coef) {
    EntropyControl e = {.target = 0.2, .delta = 0.005, .low = 0, .high = 1, .coef = coef, .last = INFINITY};
    return e;
}

/* Returns entropy_coef for this optimizer step. */
static inline double entropy_control_coef(const EntropyControl *e) { return e->last <= e->target ? e->coef : 0; }

/* Called after the step; `entropy` is the mean over the tokens that the bonus acts on (PolicyStats: kept_entropy /
 * kept). */
static inline void entropy_control_update(EntropyControl *e, double entropy) {
    e->coef = entropy <= e->target ? fmin(e->coef + e->delta, e->high) : fmax(e->coef - e->delta, e->low);
    e->last = entropy;
}

#endif
