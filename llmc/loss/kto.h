/* kto.h - losses on single completions labelled good or bad (KTO and variants).
 *
 *   x_i = log pi(y_i|x_i)/ref(y_i|x_i), summed over the completion's tokens     S = sigmoid, b = beta
 *   z   = max(0, mean_i log pi(y'_i|x_i)/ref(y'_i|x_i)), y'_i a completion of another prompt; no gradient
 *
 *   loss                good completions                bad completions                   paper
 *   kto                 w_D (1 - S(b (x - z)))          w_U (1 - S(b (z - x)))            2402.01306 eq. 7
 *   apo_zero_unpaired   w_D (1 - S(b x))                w_U S(b x)                        2408.06266 eq. 7
 *
 * The loss is the mean over the batch's completions. w_D and w_U are desirable_weight and undesirable_weight. The paper
 * recommends w_D n_D / (w_U n_U) between 1 and 4/3, where n_D and n_U are the numbers of good and bad completions
 * (kto_balance()). Formulas are those of TRL 1.16 (KTOTrainer: tests/golden/preference.txt).
 *
 *     KtoConfig c = kto_config();
 *     KtoStats stats = {0};
 *     double sum = 0;                                     // over the mismatched completions of the whole batch
 *     for (int32_t i = 0; i < n; i++) sum += kto_ratio(offset, logp, ref_logp, i);
 *     double z = kto_clamp(sum / n);
 *     for (each micro-batch) {
 *         loss += kto_loss(&c, z, n, &b, dlogp, &stats);
 *         model_backward(&model, &work, &batch, 1.0f, dlogp, NULL, NULL);     // model/transformer.h
 *     }
 */
#ifndef LLMC_LOSS_KTO_H
#define LLMC_LOSS_KTO_H

#include "preference.h" /* PreferenceValue */
#include "scalar.h"     /* METRIC, LossMetric, sigmoid */

#define KTO_LOSS_CHOICES "kto|apo_zero_unpaired"
typedef enum { KTO_KTO, KTO_APO_ZERO } KtoLoss; /* in the order of KTO_LOSS_CHOICES */

typedef struct KtoConfig {
    KtoLoss loss;
    double beta, desirable_weight, undesirable_weight;
} KtoConfig;

static inline KtoConfig kto_config(void) {
    return (KtoConfig){.beta = 0.1, .desirable_weight = 1, .undesirable_weight = 1};
}

/* A micro-batch of completions. Tokens of completion i are [offset[i], offset[i+1]) of every per-token array. */
typedef struct KtoBatch {
    int32_t completions;
    const int32_t *offset;
    const uint8_t *good; /* (completions) 1 good, 0 bad */
    const float *logp, *ref_logp;
} KtoBatch;

/* Sums over micro-batches. Index 1: good completions, 0: bad ones. */
typedef struct KtoStats {
    double loss, count[2], reward[2], logp[2];
} KtoStats;

/* w_D n_D / (w_U n_U) */
static inline double kto_balance(const KtoConfig *c, double good, double bad) {
    return c->desirable_weight * good / (c->undesirable_weight * bad);
}

/* The log-ratio of completion i. */
static inline double kto_ratio(const int32_t *offset, const float *logp, const float *ref_logp, int32_t i) {
    double sum = 0;
    for (int32_t t = offset[i]; t < offset[i + 1]; t++) sum += (double)logp[t] - ref_logp[t];
    return sum;
}

/* The reference point z, from the mean log-ratio of the mismatched completions of the whole optimizer batch. */
static inline double kto_clamp(double mean) { return mean < 0 ? 0 : mean; } /* propagates NaN */

/* The loss of one completion with log-ratio x, and its derivative with respect to x. */
static inline PreferenceValue kto_completion(const KtoConfig *c, double z, bool good, double x) {
    const double w = good ? c->desirable_weight : c->undesirable_weight;
    const double u = c->beta * (x - (c->loss == KTO_KTO ? z : 0)), S = sigmoid(u);
    return good ? (PreferenceValue){w * (1 - S), -w * c->beta * S * (1 - S)}
                : (PreferenceValue){w * S, w * c->beta * S * (1 - S)};
}

/* Returns the micro-batch's contribution to the mean over the `total` completions of the whole batch. Adds to *stats.
 * dlogp is written per token, like b->logp; NULL skips it. NaN in, NaN out. */
static inline double kto_loss(const KtoConfig *c, double z, double total, const KtoBatch *b, float *dlogp,
                              KtoStats *stats) {
    double loss = 0;
    for (int32_t i = 0; i < b->completions; i++) {
        const double x = kto_ratio(b->offset, b->logp, b->ref_logp, i);
        const PreferenceValue l = kto_completion(c, z, b->good[i], x);
        const int k = b->good[i] != 0;
        loss += l.y / total;
        stats->count[k]++;
        stats->reward[k] += c->beta * x;
        for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) {
            stats->logp[k] += b->logp[t];
            if (dlogp) dlogp[t] = (float)(l.dy / total);
        }
    }
    stats->loss += loss;
    return loss;
}

enum { KTO_METRICS = 8 };

/* Computes the metrics under TRL's names and returns their number. Metrics of a label that the batch lacks are
 * omitted. */
static inline int kto_metrics(const KtoConfig *c, const KtoStats *s, double z, LossMetric out[KTO_METRICS]) {
    int n = 0;
    METRIC("kl", c->loss == KTO_KTO ? z : 0);
    if (s->count[1]) {
        METRIC("rewards/chosen", s->reward[1] / s->count[1]);
        METRIC("logps/chosen", s->logp[1] / s->count[1]);
    }
    if (s->count[0]) {
        METRIC("rewards/rejected", s->reward[0] / s->count[0]);
        METRIC("logps/rejected", s->logp[0] / s->count[0]);
    }
    if (s->count[0] && s->count[1]) METRIC("rewards/margins", s->reward[1] / s->count[1] - s->reward[0] / s->count[0]);
    return n;
}

#endif
