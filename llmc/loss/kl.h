/* kl.h - estimators of KL(pi || ref) from the log-probabilities of sampled tokens (Schulman 2020, "Approximating KL
 * divergence", http://joschu.net/blog/kl-approx.html).
 *
 *   r = log pi(y) - log ref(y),  y drawn from pi
 *   k1 = r                unbiased, may be negative
 *   k2 = r^2 / 2          biased, low variance
 *   k3 = e^-r - 1 + r     unbiased, never negative
 *
 * In the reward no gradient flows through the estimate: k1 is unbiased there, and any estimator can be used. In the
 * loss, on samples of pi, the gradient of the estimate matters:
 *
 *   k1      has gradient 0 in expectation and therefore no effect
 *   k2      has the gradient of KL(pi || ref)
 *   k3      has the gradient of KL(ref || pi)
 *   rho k   with rho = pi / pi_old has the gradient of KL(pi || ref) for k1 and k3 (DeepSeek-V3.2: 2512.02556)
 *
 *     kl_from_rewards(KL_K1, logp, ref_logp, offset, sequences, beta, reward, NULL);   // r_i -= beta sum_t k1
 */
#ifndef LLMC_LOSS_KL_H
#define LLMC_LOSS_KL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define KL_CHOICES "k1|k2|k3"
typedef enum { KL_K1, KL_K2, KL_K3 } KlEstimator; /* in the order of KL_CHOICES */

/* Returns the estimate at r, in nats. *derivative is its derivative with respect to log pi; NULL skips it. */
static inline double kl_estimate(KlEstimator estimator, double r, double *derivative) {
    switch (estimator) {
    case KL_K1:
        if (derivative) *derivative = 1;
        return r;
    case KL_K2:
        if (derivative) *derivative = r;
        return r * r / 2;
    default: {
        const double minus_1 = expm1(-r); /* accurate near r = 0, where e^-r - 1 + r cancels */
        if (derivative) *derivative = -minus_1;
        return minus_1 + r;
    }
    }
}

/* KL in the reward, as in RLOO (Ahmadian et al. 2024, 2402.14740): reward[i] -= beta sum_t k(log pi_t - log ref_t).
 * logp and ref_logp are per token; completion i is at [offset[i], offset[i+1]). logp is that of the sampling policy.
 * penalty: (sequences) receives beta sum_t k of each completion; NULL skips it. Returns the sum of k over all tokens,
 * for the metric `kl`. */
static inline double kl_from_rewards(KlEstimator estimator, const float *logp, const float *ref_logp,
                                     const int32_t *offset, int32_t sequences, double beta, float *reward,
                                     float *penalty) {
    double total = 0;
    for (int32_t i = 0; i < sequences; i++) {
        double sum = 0;
        for (int32_t t = offset[i]; t < offset[i + 1]; t++)
            sum += kl_estimate(estimator, (double)logp[t] - ref_logp[t], NULL);
        reward[i] = (float)(reward[i] - beta * sum);
        if (penalty) penalty[i] = (float)(beta * sum);
        total += sum;
    }
    return total;
}

#endif
