/* lm.h - language-modelling losses of supervised fine-tuning, as functions of log-probabilities.
 *
 * logp[r] is log pi(target_r | context), weight[r] is the target's weight in the loss (a mask has 1 for targets that
 * are trained on, else 0; NULL: all 1). N, the normaliser, is the sum of the weights over the WHOLE optimizer batch,
 * all micro-batches and ranks. The losses and gradients of micro-batches therefore add up to those of the batch,
 * however it is split. N is taken as at least 1, so a batch without targets has loss 0.
 *
 *     double N = 0;
 *     for (int64_t r = 0; r < n; r++) N += weight[r];          // the whole batch
 *     for (each micro-batch) {
 *         loss += loss_nll(out.logp, weight, R, N, dlogp);
 *         model_backward(&model, &work, &batch, 1.0f, dlogp, NULL, NULL);     // model/transformer.h
 *     }
 */
#ifndef LLMC_LOSS_LM_H
#define LLMC_LOSS_LM_H

#include <math.h>
#include <stdint.h>

#define LM_LOSS_CHOICES "nll|dft"
typedef enum { LM_NLL, LM_DFT } LmLoss; /* in the order of LM_LOSS_CHOICES */

/* Negative log-likelihood:  L = - sum_r w_r log p_r / N,  dL/dlogp_r = - w_r / N.
 * Writes dlogp (n); NULL skips it. Returns this micro-batch's contribution to L, in nats. */
static inline double loss_nll(const float *logp, const float *weight, int64_t n, double normaliser, float *dlogp) {
    const double N = fmax(normaliser, 1);
    double sum = 0;
    for (int64_t r = 0; r < n; r++) {
        const double w = weight ? weight[r] : 1;
        if (w != 0) sum -= w * logp[r]; /* logp of a target without weight may be -inf */
        if (dlogp) dlogp[r] = (float)(-w / N);
    }
    return sum / N;
}

/* Dynamic fine-tuning (Wu et al. 2025, 2508.05629; sg = stop-gradient):
 *   L = - sum_r w_r sg(p_r) log p_r / N,  dL/dlogp_r = - w_r p_r / N */
static inline double loss_dft(const float *logp, const float *weight, int64_t n, double normaliser, float *dlogp) {
    const double N = fmax(normaliser, 1);
    double sum = 0;
    for (int64_t r = 0; r < n; r++) {
        const double w = weight ? weight[r] : 1, p = exp((double)logp[r]);
        if (w != 0 && p > 0) sum -= w * p * logp[r]; /* p log p -> 0 */
        if (dlogp) dlogp[r] = (float)(-w * p / N);
    }
    return sum / N;
}

static inline double loss_lm(LmLoss loss, const float *logp, const float *weight, int64_t n, double normaliser,
                             float *dlogp) {
    return loss == LM_DFT ? loss_dft(logp, weight, n, normaliser, dlogp) : loss_nll(logp, weight, n, normaliser, dlogp);
}

#endif
