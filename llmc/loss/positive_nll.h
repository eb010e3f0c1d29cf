/* positive_nll.h - the negative log-likelihood of right completions as a term beside the loss of a policy (VAPO: Yue et
 * al. 2025, 2504.05118, "positive example LM loss").
 *
 *   coef mean_t -log pi(y_t)      over the tokens of the right completions that count, in the WHOLE optimizer batch
 *
 * so that the parts of micro-batches add up. A completion is right if its reward, without a KL penalty, is at least a
 * threshold.
 *
 *     PositiveNll p = {.coef = 0.1, .reward = 1};
 *     PositiveBatch b;
 *     positive_nll_begin(&p, reward, counts, offset, 128);              // of the whole step, which has 128 completions
 *     loss += positive_nll_add(&p, &b, dlogp);                          // for each micro-batch, after the policy's loss
 */
#ifndef LLMC_LOSS_POSITIVE_NLL_H
#define LLMC_LOSS_POSITIVE_NLL_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct PositiveNll {
    double coef, reward; /* 0: no term; the reward from which a completion is right */
    double tokens;       /* of the right completions of the step that count */
    double sum;          /* of the micro-batches since positive_nll_begin(): -log pi, in nats */
} PositiveNll;

/* A micro-batch of whole completions. Tokens of completion i are [offset[i], offset[i+1]) of every per-token array. */
typedef struct PositiveBatch {
    int32_t completions;
    const int32_t *offset;
    const float *reward;   /* (completions) */
    const uint8_t *counts; /* (completions) */
    const float *logp;
} PositiveBatch;

/* A reward that is NaN is not right. */
static inline bool positive_is_right(const PositiveNll *p, float reward, uint8_t counts) {
    return counts && reward >= p->reward;
}

/* Begins an optimizer step of these completions. */
static inline void positive_nll_begin(PositiveNll *p, const float *reward, const uint8_t *counts, const int32_t *offset,
                                      int32_t completions) {
    p->tokens = p->sum = 0;
    for (int32_t i = 0; i < completions; i++)
        if (positive_is_right(p, reward[i], counts[i])) p->tokens += offset[i + 1] - offset[i];
}

/* Returns the micro-batch's part of the loss and adds its gradient to dlogp. */
static inline double positive_nll_add(PositiveNll *p, const PositiveBatch *b, float *dlogp) {
    const double weight = p->tokens > 0 ? p->coef / p->tokens : 0;
    double nll = 0;
    if (p->coef == 0) return 0;
    for (int32_t i = 0; i < b->completions; i++) {
        if (!positive_is_right(p, b->reward[i], b->counts[i])) continue;
        for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) {
            nll -= b->logp[t];
            dlogp[t] -= (float)weight;
        }
    }
    p->sum += nll;
    return weight * nll;
}

#endif
