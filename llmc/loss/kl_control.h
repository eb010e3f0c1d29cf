/* kl_control.h - control of the weight beta of the KL penalty in the reward.
 *
 *   fixed      beta is constant
 *   adaptive   beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)
 *
 * n is the number of completions since the last update. KL is their mean divergence in nats per COMPLETION (the sum
 * over its tokens; metric objective/kl). beta converges to a value at which the policy's KL is the target, and changes
 * by at most a fifth within `horizon` completions. Ziegler et al. 2019 (1909.08593), section 2.2: beta 0.15, target 6,
 * horizon 10000.
 *
 *     KlControl c = {.kind = KL_ADAPTIVE, .target = 6, .horizon = 10000, .coef = 0.15};
 *     kl_control_update(&c, mean_kl, completions);      // after each generation; c.coef is the state
 */
#ifndef LLMC_LOSS_KL_CONTROL_H
#define LLMC_LOSS_KL_CONTROL_H

#include <math.h>

#define KL_CONTROL_CHOICES "fixed|adaptive"
typedef enum { KL_FIXED, KL_ADAPTIVE } KlControlKind; /* in the order of KL_CONTROL_CHOICES */

typedef struct KlControl {
    KlControlKind kind;
    double target;  /* nats per completion */
    double horizon; /* completions */
    double coef;    /* beta */
} KlControl;

/* Updates c->coef. kl: mean in nats per completion; ignored if it is not finite. */
static inline void kl_control_update(KlControl *c, double kl, double completions) {
    if (c->kind == KL_FIXED || !isfinite(kl)) return;
    const double error = fmax(-0.2, fmin(0.2, kl / c->target - 1));
    c->coef *= 1 + error * completions / c->horizon;
}

#endif
