/* ppo.h - losses of train_ppo, as functions of log-probabilities and values.
 *
 *   policy   mean_t max(-A_t rho_t, -A_t clip(rho_t, 1 - eps, 1 + eps_high))       rho_t = pi(y_t) / pi_old(y_t)
 *            dual clip: if A_t < 0 and c > 0, at most -A_t c
 *   plain    mean_t -A_t log pi(y_t)                                               A2C, REINFORCE: no ratio
 *   value    1/2 mean_t max((V_t - G_t)^2, (clip(V_t, V_old - eps_v, V_old + eps_v) - G_t)^2)
 *   KL       kl_coef mean_t k(log pi(y_t) - log ref(y_t))                          kl.h; not the one in the reward
 *   loss     policy + KL - entropy_coef mean_t H_t + vf_coef value
 *
 * Schulman et al. 2017 (1707.06347), eq. 7 and 9. The clipped value loss and the means over tokens follow Ziegler et
 * al.'s code and TRL's PPOTrainer. Dual clip: Ye et al. 2020 (1912.09729), eq. 5. With rho = 1 the clipped and the
 * plain loss have the same gradient: A2C is PPO with one pass (Huang et al. 2022, 2205.09123).
 *
 * mean_t is the mean over the tokens of the completions that count in the WHOLE optimizer batch, or another aggregation
 * of them (LossNormaliser), so the losses and gradients of micro-batches add up to those of the batch, however it is
 * split. TRL differs: its policy means are over the tokens of a micro-batch, and its value means include one position
 * after each completion. KL in the loss and aggregations are verl's (use_kl_loss, kl_loss_coef, loss_agg_mode).
 *
 *     PpoConfig c = ppo_config();
 *     LossNormaliser n = ppo_normaliser(AGG_TOKEN_MEAN, 0, offset, completions, counts);
 *     PpoStats stats = {0};
 *     for (each micro-batch)
 *         loss += ppo_policy_loss(&c, &n, &b, dlogp, dentropy, &stats) +
 *                 ppo_value_loss(&c, &n, &b, dvalue, &stats);
 *     stats.updates++;
 */
#ifndef LLMC_LOSS_PPO_H
#define LLMC_LOSS_PPO_H

#include "aggregation.h" /* LossNormaliser, loss_divisor, LossAggregation */
#include "kl.h"          /* KlEstimator, kl_estimate */
#include "scalar.h"      /* clamp */
#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct PpoConfig {
    bool plain;                       /* no ratio, no clip */
    double cliprange, cliprange_high; /* eps, eps_high */
    double dual_clip;                 /* c; 0: none */
    double cliprange_value;           /* eps_v; 0: none */
    double vf_coef, entropy_coef;
    double kl_coef; /* of the KL term of the loss; 0: none */
    KlEstimator kl;
} PpoConfig;

/* TRL's defaults. */
static inline PpoConfig ppo_config(void) {
    return (PpoConfig){.cliprange = 0.2, .cliprange_high = 0.2, .cliprange_value = 0.2, .vf_coef = 0.1};
}

/* A micro-batch of whole completions. Tokens of completion i are [offset[i], offset[i+1]) of every per-token array. */
typedef struct PpoBatch {
    int32_t completions;
    const int32_t *offset;
    const uint8_t *counts; /* 0: excluded */
    const float *logp;
    const float *old_logp; /* NULL: rho is exactly 1 */
    const float *ref_logp; /* needed if kl_coef is not 0; else may be NULL */
    const float *advantage;
    const float *entropy; /* needed if entropy_coef is not 0; else may be NULL */
    const float *value;
    const float *old_value;    /* NULL: no clip */
    const float *target;       /* G_t */
    const float *sampler_logp; /* NULL: not compared */
} PpoBatch;

/* Totals over tokens; policy_loss and value_loss are totals over updates. The two parts contain doubles only, so that
 * ranks can add them and take their maxima (dist.h). */
typedef struct PpoStats {
    double updates;
    struct {
        double tokens, ratio, ratio_square, square_log, clipped, entropy;
        double kl; /* of the loss's KL term, per token */
        double value_tokens, value_clipped;
        double policy_loss, value_loss;
    } sum;
    struct {
        double sampler_gap, ratio_gap;
    } max;
} PpoStats;

/* Adds the totals of other completions; `updates` is unchanged. */
static inline void ppo_stats_add(PpoStats *s, const PpoStats *more) {
    double *sum = (double *)&s->sum;
    const double *other = (const double *)&more->sum;
    for (size_t i = 0; i < sizeof s->sum / sizeof *sum; i++) sum[i] += other[i];
    s->max.sampler_gap = fmax(s->max.sampler_gap, more->max.sampler_gap);
    s->max.ratio_gap = fmax(s->max.ratio_gap, more->max.ratio_gap);
}

/* Counts the completions that count and their tokens. norm: the constant of AGG_SEQ_MEAN_TOKEN_SUM_NORM. */
static inline LossNormaliser ppo_normaliser(LossAggregation mode, double norm, const int32_t *offset,
                                            int32_t completions, const uint8_t *counts) {
    LossNormaliser n = {.mode = mode, .norm = norm};
    for (int32_t i = 0; i < completions; i++) {
        if (!counts[i]) continue;
        n.tokens += offset[i + 1] - offset[i];
        n.completions++;
    }
    return n;
}

/* The loss of one token and its derivative with respect to log pi. *clipped: the clipped loss is strictly larger, as in
 * TRL. */
static inline double ppo_token(const PpoConfig *c, double log_ratio, double logp, double A, double *dlogp,
                               bool *clipped) {
    *clipped = false;
    if (c->plain) {
        *dlogp = -A;
        return -A * logp;
    }
    const double rho = exp(log_ratio);
    const double free_loss = -A * rho, held = -A * clamp(rho, 1 - c->cliprange, 1 + c->cliprange_high);
    *clipped = held > free_loss;
    *dlogp = *clipped ? 0 : -A * rho;
    const double loss = *clipped ? held : free_loss;
    if (c->dual_clip <= 0 || A >= 0 || loss <= -A * c->dual_clip) return loss;
    *dlogp = 0;
    return -A * c->dual_clip;
}

/* Returns the policy loss with its KL term minus the entropy bonus. Writes dlogp and dentropy (0 for completions that
 * do not count); NULL skips them. */
static inline double ppo_policy_loss(const PpoConfig *c, const LossNormaliser *n, const PpoBatch *b, float *dlogp,
                                     float *dentropy, PpoStats *s) {
    double policy = 0, bonus = 0, penalty = 0;
    assert(c->entropy_coef == 0 || b->entropy);
    assert(c->kl_coef == 0 || b->ref_logp);
    for (int32_t i = 0; i < b->completions; i++) {
        const double divisor = loss_divisor(n, b->offset[i + 1] - b->offset[i]);
        for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) {
            if (dlogp) dlogp[t] = 0;
            if (dentropy) dentropy[t] = 0;
            if (!b->counts[i]) continue;
            const double d = b->old_logp ? (double)b->logp[t] - b->old_logp[t] : 0;
            double derivative;
            bool clipped;
            policy += ppo_token(c, d, b->logp[t], b->advantage[t], &derivative, &clipped) / divisor;
            if (c->kl_coef != 0) {
                double dk;
                const double k = kl_estimate(c->kl, (double)b->logp[t] - b->ref_logp[t], &dk);
                penalty += c->kl_coef * k / divisor;
                derivative += c->kl_coef * dk;
                s->sum.kl += k;
            }
            if (dlogp) dlogp[t] = (float)(derivative / divisor);
            if (c->entropy_coef != 0) bonus += c->entropy_coef * b->entropy[t] / divisor;
            if (dentropy) dentropy[t] = (float)(-c->entropy_coef / divisor);
            const double rho = exp(d);
            s->sum.tokens++;
            s->sum.clipped += clipped;
            s->sum.ratio += rho;
            s->sum.ratio_square += rho * rho;
            s->sum.square_log += d * d;
            s->max.ratio_gap = fmax(s->max.ratio_gap, fabs(rho - 1));
            if (b->entropy) s->sum.entropy += b->entropy[t];
            if (b->sampler_logp) {
                const double trainer = b->old_logp ? b->old_logp[t] : b->logp[t];
                s->max.sampler_gap = fmax(s->max.sampler_gap, fabs(trainer - b->sampler_logp[t]));
            }
        }
    }
    s->sum.policy_loss += policy;
    return policy + penalty - bonus;
}

/* Half the maximum of the unclipped and the clipped squared error, and its derivative with respect to V. */
static inline double ppo_value_token(double V, double old, double G, double range, double *dvalue, bool *clipped) {
    const double held = range > 0 ? clamp(V, old - range, old + range) : V;
    const double a = (V - G) * (V - G), b = (held - G) * (held - G);
    *clipped = b > a;
    *dvalue = *clipped ? 0 : V - G; /* the clipped V is a constant */
    return 0.5 * fmax(a, b);
}

/* Returns vf_coef times the value loss. Writes dvalue (0 for completions that do not count); NULL skips it. */
static inline double ppo_value_loss(const PpoConfig *c, const LossNormaliser *n, const PpoBatch *b, float *dvalue,
                                    PpoStats *s) {
    double loss = 0;
    for (int32_t i = 0; i < b->completions; i++) {
        const double divisor = loss_divisor(n, b->offset[i + 1] - b->offset[i]);
        for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) {
            if (dvalue) dvalue[t] = 0;
            if (!b->counts[i]) continue;
            double derivative;
            bool clipped;
            loss += ppo_value_token(b->value[t], b->old_value ? b->old_value[t] : b->value[t], b->target[t],
                                    b->old_value ? c->cliprange_value : 0, &derivative, &clipped) /
                    divisor;
            if (dvalue) dvalue[t] = (float)(c->vf_coef * derivative / divisor);
            s->sum.value_tokens++;
            s->sum.value_clipped += clipped;
        }
    }
    s->sum.value_loss += loss;
    return c->vf_coef * loss;
}

#endif
