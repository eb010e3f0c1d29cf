/* aggregation.h - from the losses of tokens to the loss of a batch: by which number each token's loss is divided.
 *
 *   mode                      loss of the batch                                       divisor of a token's loss
 *   token-mean                mean over all tokens                                    tokens
 *   seq-mean-token-sum        mean over completions of their sums                     completions
 *   seq-mean-token-mean       mean over completions of their means                    completions * T
 *   seq-mean-token-sum-norm   mean over completions of their sums, by a constant      completions * norm
 *
 * T is the number of tokens of the completion. The names are those of verl's loss_agg_mode (core_algos.py, agg_loss);
 * seq-mean-token-sum-norm is Dr. GRPO's (2503.20783), whose constant is the maximum length of a completion.
 *
 *     LossNormaliser n = {.mode = AGG_TOKEN_MEAN, .tokens = 512, .completions = 16};   // of the optimizer batch
 *     double share = 1 / loss_divisor(&n, 37);           // of a token in a completion of 37 tokens
 */
#ifndef LLMC_LOSS_AGGREGATION_H
#define LLMC_LOSS_AGGREGATION_H

#include <math.h>

#define LOSS_AGG_CHOICES "token-mean|seq-mean-token-sum|seq-mean-token-mean|seq-mean-token-sum-norm"
/* in the order of LOSS_AGG_CHOICES */
typedef enum {
    AGG_TOKEN_MEAN,
    AGG_SEQ_MEAN_TOKEN_SUM,
    AGG_SEQ_MEAN_TOKEN_MEAN,
    AGG_SEQ_MEAN_TOKEN_SUM_NORM
} LossAggregation;

/* Of the whole optimizer batch, so that the parts of a loss add up. */
typedef struct LossNormaliser {
    LossAggregation mode;
    double tokens, completions;
    double norm; /* constant of seq-mean-token-sum-norm */
} LossNormaliser;

/* The divisor of the loss of a token in a completion of T tokens. A count of 0 is taken as 1. */
static inline double loss_divisor(const LossNormaliser *n, double T) {
    switch (n->mode) {
    case AGG_TOKEN_MEAN: return fmax(n->tokens, 1);
    case AGG_SEQ_MEAN_TOKEN_SUM: return fmax(n->completions, 1);
    case AGG_SEQ_MEAN_TOKEN_MEAN: return fmax(n->completions, 1) * fmax(T, 1);
    default: return fmax(n->completions, 1) * n->norm;
    }
}

#endif
