/* off_policy.h - the importance ratio of tokens that another policy wrote, with policy shaping (LUFFY: Yan et al. 2025,
 * 2504.14945).
 *
 * A demonstration y is a sample of another policy phi. Its probabilities under phi are unknown, and phi(y_t) is taken as
 * 1, so that the importance ratio pi / phi is p = pi(y_t) itself. The loss of a token with advantage A is -f(p) A:
 *
 *   reshape      f(p)            d f / d log pi
 *   p_div_p      p / (p + g)     g p / (p + g)^2      policy shaping; g is gamma, which is 0.1 in the paper
 *   no_reshape   p               p                    mixed-policy GRPO without shaping
 *
 * The gradient of p_div_p is largest at p = gamma, so that tokens that the policy finds unlikely count most; that of
 * no_reshape vanishes for them. No clip applies, as in LUFFY's compute_token_on_off_policy_loss(), whose
 * off_policy_reshape p_div_p_0.1 is p_div_p with gamma 0.1. The paper's objective without shaping has the clip of GRPO
 * around p, too; p is at most 1, so that this clip could act on demonstrations with a negative advantage only.
 *
 *     const OffPolicy o = off_policy_default();
 *     double slope;
 *     double ratio = off_policy_ratio(&o, logp[i], &slope);      // f(p), d f / d log pi
 */
#ifndef LLMC_LOSS_OFF_POLICY_H
#define LLMC_LOSS_OFF_POLICY_H

#include <math.h>

#define OFF_POLICY_RESHAPE_CHOICES "p_div_p|no_reshape"
typedef enum { OFF_POLICY_P_DIV_P, OFF_POLICY_NO_RESHAPE } OffPolicyReshape; /* in the order of the choices */

typedef struct OffPolicy {
    int reshape; /* an OffPolicyReshape */
    double gamma;
} OffPolicy;

static inline OffPolicy off_policy_default(void) { return (OffPolicy){OFF_POLICY_P_DIV_P, 0.1}; }

/* Returns f(p) of a token with the log-probability `logp`, from 0 to 1. *slope: its derivative with respect to log pi. */
static inline double off_policy_ratio(const OffPolicy *o, double logp, double *slope) {
    const double p = exp(logp);
    if (o->reshape == OFF_POLICY_NO_RESHAPE) return *slope = p;
    *slope = o->gamma * p / ((p + o->gamma) * (p + o->gamma));
    return p / (p + o->gamma);
}

#endif
