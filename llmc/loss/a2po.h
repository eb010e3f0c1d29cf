/* a2po.h - A*-PO: regression of the policy's log-ratio on the optimal advantage (Brantley et al. 2025, "Accelerating RL for LLM
 * Reasoning with Optimal Advantage Regression", 2505.20686).
 *
 *   V(x)   beta1 log mean_i exp(r_i / beta1)           over n completions of x that the reference drew
 *   loss   mean_y (beta2 log(pi(y) / ref(y)) - (r(x, y) - V(x)))^2      over completions y that the policy drew
 *
 * Formulas and defaults are those of TRL's A2POTrainer (beta1 0.5, beta2 1e-3, 8 completions);
 * tests/golden/losses_peers.txt holds values that its code computed. The mean is over the completions of the WHOLE
 * optimizer batch, so that the parts of micro-batches add up. log pi(y) is the sum over the tokens of a completion.
 *
 *     A2poBatch b;
 *     A2poStats stats = {0};
 *     double V = a2po_value(0.5, reward, 8);
 *     loss += a2po_loss(1e-3, 128, &b, dlogp, &stats);                  // 128 completions in the optimizer batch
 */
#ifndef LLMC_LOSS_A2PO_H
#define LLMC_LOSS_A2PO_H

#include <math.h>
#include <stdint.h>

/* A micro-batch of whole completions. Tokens of completion i are [offset[i], offset[i+1]) of every per-token array. */
typedef struct A2poBatch {
    int32_t completions;
    const int32_t *offset;
    const float *target;   /* (completions) r - V */
    const uint8_t *counts; /* (completions) 0: left out */
    const float *logp, *ref_logp;
} A2poBatch;

/* Sums over completions that count; doubles only, so that ranks can add them (dist.h). */
typedef struct A2poStats {
    double completions, implicit, target; /* implicit: beta2 log(pi / ref) */
} A2poStats;

/* V of a prompt from the rewards of n completions; NaN marks one that could not be scored and is left out. NaN if none is
 * left. */
static inline double a2po_value(double beta1, const float *reward, int n) {
    double largest = -INFINITY, sum = 0, count = 0;
    for (int i = 0; i < n; i++)
        if (!isnan(reward[i])) {
            largest = fmax(largest, (double)reward[i]);
            count++;
        }
    for (int i = 0; i < n; i++)
        if (!isnan(reward[i])) sum += exp(((double)reward[i] - largest) / beta1);
    return count > 0 ? largest + beta1 * log(sum / count) : NAN;
}

/* Returns the micro-batch's part of the loss and adds its gradient to dlogp. completions: of the optimizer batch that count. */
static inline double a2po_loss(double beta2, double completions, const A2poBatch *b, float *dlogp, A2poStats *s) {
    const double N = fmax(completions, 1);
    double loss = 0;
    for (int32_t i = 0; i < b->completions; i++) {
        double d = 0;
        if (!b->counts[i]) continue;
        for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) d += (double)b->logp[t] - b->ref_logp[t];
        const double gap = beta2 * d - (double)b->target[i];
        loss += gap * gap / N;
        for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) dlogp[t] += (float)(2 * beta2 * gap / N);
        s->completions++;
        s->implicit += beta2 * d;
        s->target += (double)b->target[i];
    }
    return loss;
}

#endif
