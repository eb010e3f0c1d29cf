/* advantage.h - group-relative advantages A_i from the rewards of G completions per prompt.
 *
 * Rewards are groups * G floats; the completions of a group are adjacent. NaN marks a completion that could not be
 * scored: it is excluded from every mean and standard deviation, and its advantage is 0. The advantage of the only
 * scored completion of a group is also 0. Means and standard deviations are computed in double; standard deviations
 * divide by n - 1 (ddof 1). Equal rewards give advantages of exactly 0.
 *
 * The formulas are those of TRL 1.16 (grpo_trainer.py, rloo_trainer.py) with its EPS = 1e-4:
 *
 *   group   A_i = (r_i - mean_group) / (std_group + EPS)   GRPO: Shao et al. 2024 (2402.03300), sec. 4.1.2
 *   batch   A_i = (r_i - mean_group) / (std_batch + EPS)   Lite PPO: Liu et al. 2025 (2508.08221)
 *   none    A_i =  r_i - mean_group                        Dr. GRPO: Liu et al. 2025 (2503.20783)
 *   gdpo    z_ik = (R_ik - mean_group_k) / (std_group_k + EPS),  s_i = sum_k w_k z_ik,
 *           A_i = (s_i - mean_batch s) / (std_batch s + EPS)      GDPO: Liu et al. 2026 (2601.05242)
 *           with a KL penalty in the reward, beta KL_i is subtracted from s_i: normalised like a part, it would have no
 *           scale, and beta no effect (neither the paper nor TRL or verl has both)
 *   rloo    A_i = r_i - mean of the others in the group    RLOO: Ahmadian et al. 2024 (2402.14740)
 *
 *     AdvantageStats stats;
 *     advantage_group(reward, 8, 16, SCALE_GROUP, advantage, &stats);    // 8 prompts, 16 completions each
 */
#ifndef LLMC_LOSS_ADVANTAGE_H
#define LLMC_LOSS_ADVANTAGE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#define ADVANTAGE_EPS         1e-4
#define SCALE_REWARDS_CHOICES "group|batch|none"
typedef enum { SCALE_GROUP, SCALE_BATCH, SCALE_NONE } ScaleRewards; /* in the order of SCALE_REWARDS_CHOICES */

/* Metrics with TRL's names. */
typedef struct AdvantageStats {
    double reward, reward_std;   /* over the batch; NaN if fewer than 1 or 2 completions have a reward */
    double frac_reward_zero_std; /* fraction of completions whose standard deviation (the divisor) is 0 */
} AdvantageStats;

/* Mean and standard deviation over the values of x[0], x[stride], ... (n of them) that are not NaN. */
typedef struct Spread {
    double mean, std; /* mean: NaN if count is 0; std: NaN if count < 2 */
    int64_t count;
} Spread;

static inline Spread spread_of(const float *x, int64_t n, int64_t stride) {
    Spread s = {0};
    double squares = 0;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(x[i * stride])) {
            s.mean += x[i * stride];
            s.count++;
        }
    s.mean = s.count ? s.mean / (double)s.count : NAN;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(x[i * stride])) squares += (x[i * stride] - s.mean) * (x[i * stride] - s.mean);
    s.std = s.count > 1 ? sqrt(squares / (double)(s.count - 1)) : NAN;
    return s;
}

/* torch.isclose(std, 0) */
static inline bool spread_is_zero(double std) { return std <= 1e-8; }

/* Returns whether the rewards of one group differ. Dynamic sampling keeps only groups with different rewards (DAPO: Yu
 * et al. 2025, 2503.14476, eq. 11): the others have no gradient. */
static inline bool advantage_group_differs(const float *reward, int64_t G) {
    return spread_of(reward, G, 1).std > 1e-8;
}

static inline float advantage_or_zero(double a) { return isfinite(a) ? (float)a : 0.0f; }

static inline void advantage_batch_stats(const float *reward, int64_t n, AdvantageStats *stats) {
    const Spread all = spread_of(reward, n, 1);
    stats->reward = all.mean;
    stats->reward_std = all.std;
}

/* reward, advantage: (groups, G). The standard deviation of a group of one (or a batch of one) is taken as 0. */
static inline void advantage_group(const float *reward, int64_t groups, int64_t G, ScaleRewards scale, float *advantage,
                                   AdvantageStats *stats) {
    int64_t zero = 0;
    advantage_batch_stats(reward, groups * G, stats);
    const double batch_std = groups * G > 1 ? stats->reward_std : 0;
    for (int64_t g = 0; g < groups; g++) {
        const Spread group = spread_of(reward + g * G, G, 1);
        const double std = scale == SCALE_BATCH ? batch_std : G > 1 ? group.std : 0;
        const double divisor = scale == SCALE_NONE ? 1 : std + ADVANTAGE_EPS;
        for (int64_t i = g * G; i < (g + 1) * G; i++)
            advantage[i] = advantage_or_zero((reward[i] - group.mean) / divisor);
        zero += spread_is_zero(std) ? G : 0;
    }
    stats->frac_reward_zero_std = (double)zero / (double)(groups * G);
}

/* Normalises each reward part, then sums them ("normalize_then_sum").
 * parts: (groups * G, K), as written by rewards_score(), NaN if a part has no score; weight: (K); penalty: (groups * G)
 * subtracted from the sum, or NULL. The metrics reward and reward_std are without it. */
static inline void advantage_gdpo(const float *parts, const double *weight, const float *penalty, int64_t groups,
                                  int64_t G, int64_t K, float *advantage, AdvantageStats *stats) {
    const int64_t n = groups * G;
    for (int64_t i = 0; i < n; i++) { /* the plain weighted sum, for the metrics */
        double sum = 0;
        int64_t scored = 0;
        for (int64_t k = 0; k < K; k++)
            if (!isnan(parts[i * K + k])) {
                sum += weight[k] * parts[i * K + k];
                scored++;
            }
        advantage[i] = scored ? (float)sum : NAN;
    }
    advantage_batch_stats(advantage, n, stats);
    for (int64_t i = 0; i < n; i++)
        if (!isnan(advantage[i])) advantage[i] = 0;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t k = 0; k < K; k++) {
            const float *R = parts + g * G * K + k;
            const Spread group = spread_of(R, G, K);
            const double divisor = (G > 1 ? group.std : 0) + ADVANTAGE_EPS;
            for (int64_t i = 0; i < G; i++) {
                const double z = (R[i * K] - group.mean) / divisor;
                if (!isnan(z)) advantage[g * G + i] += (float)(weight[k] * z);
            }
        }
    for (int64_t i = 0; penalty && i < n; i++) advantage[i] -= penalty[i];
    const Spread batch = spread_of(advantage, n, 1);
    const double std = n > 1 ? batch.std : 0;
    for (int64_t i = 0; i < n; i++)
        advantage[i] = advantage_or_zero((advantage[i] - batch.mean) / (std + ADVANTAGE_EPS));
    stats->frac_reward_zero_std = spread_is_zero(std);
}

/* The leave-one-out baseline. With `normalise` the advantages are whitened over the batch, as in
 * REINFORCE++-baseline (Hu et al. 2025, 2501.03262). */
static inline void advantage_rloo(const float *reward, int64_t groups, int64_t G, bool normalise, float *advantage,
                                  AdvantageStats *stats) {
    int64_t zero = 0;
    advantage_batch_stats(reward, groups * G, stats);
    for (int64_t g = 0; g < groups; g++) {
        const Spread group = spread_of(reward + g * G, G, 1);
        const double n = (double)group.count;
        for (int64_t i = g * G; i < (g + 1) * G; i++) /* r - (n mean - r) / (n - 1) */
            advantage[i] = group.count > 1 ? (float)(n / (n - 1) * (reward[i] - group.mean)) : G > 1 ? NAN : 0;
        zero += spread_is_zero(G > 1 ? group.std : 0) ? G : 0;
    }
    const Spread batch = spread_of(advantage, groups * G, 1);
    for (int64_t i = 0; i < groups * G; i++)
        advantage[i] =
            advantage_or_zero(normalise ? (advantage[i] - batch.mean) / (batch.std + ADVANTAGE_EPS) : advantage[i]);
    stats->frac_reward_zero_std = (double)zero / (double)(groups * G);
}

#endif
