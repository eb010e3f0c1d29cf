/* advantage_estimators.h - other advantages of a group's completions than those of GRPO (advantage.h).
 *
 * r are the rewards of the N scored completions of a prompt, mean and std theirs (ddof 1), T_i lengths in tokens:
 *
 *   max_rl      A_i = (r_i - mean) / mean, 0 where mean <= 0; r >= 0        MaxRL: 2602.02710; prime-rl
 *   pass_k      0/1 rewards, of which n are 0:  R = 1 - C(n,k)/C(N,k),  s = sqrt(R (1 - R)),
 *               A_i = (1 - R)/s if r_i = 1, else (1 - R - C(n-1,k-1)/C(N-1,k-1))/s;  0 if s = 0: the mean over all subsets
 *               of k completions with completion i of (the subset's best reward - R)/s         Chen et al. 2025 (2508.10751)
 *   grpo_passk  (r_max - r_second) / (std + 1e-6) for the first best, 0 for the others         2503.19595; verl
 *   opo         A_i = r_i - sum_j T_j r_j / sum_j T_j                                          Hao et al. 2025 (2505.23585)
 *   optimal_token_baseline
 *               A_it = r_i - B_t,  B_t = sum_j r_j W_jt / (sum_j W_jt + 1e-8) over the completions that have a token t, with
 *               W_jt = sum_{k <= t} (1 - 2 p_jk + sum_v p_v^2) of the old policy; B_t = 0 where the longest completion is the
 *               only one left                                                                  OTB; verl
 *   gpg         A_i = a (r_i - mean), a = groups of the step / groups whose rewards differ     Chu et al. 2025 (2504.02546)
 *
 * As in advantage.h, NaN marks a completion that could not be scored; its advantage is 0.
 *
 *     AdvantageStats stats;
 *     advantage_estimate(ADVANTAGE_OPO, reward, offset, 8, 16, 0, advantage, &stats);      // 8 prompts, 16 completions each
 */
#ifndef LLMC_LOSS_ADVANTAGE_ESTIMATORS_H
#define LLMC_LOSS_ADVANTAGE_ESTIMATORS_H

#include "advantage.h" /* AdvantageStats, advantage_or_zero, spread_of, SCALE_NONE, ... */

#define ADVANTAGE_CHOICES "group|max_rl|pass_k|grpo_passk|opo|gpg|optimal_token_baseline|rae|hierarchical_grpo"
/* in the order of ADVANTAGE_CHOICES; ADVANTAGE_GROUP: advantage.h; ADVANTAGE_RAE and ADVANTAGE_HIERARCHICAL: advantage_roles.h */
typedef enum {
    ADVANTAGE_GROUP,
    ADVANTAGE_MAX_RL,
    ADVANTAGE_PASS_K,
    ADVANTAGE_GRPO_PASSK,
    ADVANTAGE_OPO,
    ADVANTAGE_GPG,
    ADVANTAGE_OTB,
    ADVANTAGE_RAE,
    ADVANTAGE_HIERARCHICAL
} AdvantageEstimator;

#define GROUP_FILTER_CHOICES "length|token_efficiency"
/* in the order of GROUP_FILTER_CHOICES */
typedef enum { GROUP_FILTER_LENGTH, GROUP_FILTER_EFFICIENCY } GroupFilter;

/* GFPO (Shrivastava et al. 2025, 2508.09726): the k completions of a group that are shortest, or have the highest reward per
 * token, keep their rewards; kept is NaN for the others, which then are in no mean or deviation and have the advantage 0. Of
 * equal ones the earlier is kept. reward, length, kept: (G) */
static inline void advantage_filter(GroupFilter filter, const float *reward, const int32_t *length, int64_t G,
                                    int64_t k, float *kept) {
    double value[G];
    for (int64_t i = 0; i < G; i++) {
        const double T = length[i] > 1 ? length[i] : 1;
        value[i] = filter == GROUP_FILTER_LENGTH ? -T : (double)reward[i] / T;
    }
    for (int64_t i = 0; i < G; i++) {
        int64_t better = 0;
        for (int64_t j = 0; j < G; j++)
            better += !isnan(reward[j]) && (value[j] > value[i] || (!(value[j] < value[i]) && j < i));
        kept[i] = better < k ? reward[i] : NAN;
    }
}

/* C(a,k)/C(b,k) for a <= b. */
static inline double advantage_choose_ratio(int64_t a, int64_t b, int64_t k) {
    double ratio = 1;
    for (int64_t i = 0; i < k; i++) ratio *= a - i > 0 ? (double)(a - i) / (double)(b - i) : 0;
    return ratio;
}

/* Whether an estimator can take a reward. */
static inline bool advantage_takes(AdvantageEstimator kind, float reward) {
    if (isnan(reward)) return true;
    return kind == ADVANTAGE_MAX_RL ? reward >= 0 : kind == ADVANTAGE_PASS_K ? reward == 0 || reward == 1 : true;
}

static inline void advantage_pass_k(const float *r, int64_t G, int64_t scored, int64_t k, float *advantage) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < G; i++) wrong += r[i] == 0;
    const double R = 1 - advantage_choose_ratio(wrong, scored, k), s = sqrt(R * (1 - R));
    const double others = advantage_choose_ratio(wrong - 1, scored - 1, k - 1);
    for (int64_t i = 0; i < G; i++) {
        if (isnan(r[i]) || scored < k || !(s > 0)) continue;
        advantage[i] = (float)((r[i] == 1 ? 1 - R : 1 - R - others) / s);
    }
}

static inline void advantage_best_of_two(const float *r, int64_t G, double std, float *advantage) {
    int64_t best = -1;
    double second = -INFINITY;
    for (int64_t i = 0; i < G; i++)
        if (!isnan(r[i]) && (best < 0 || r[i] > r[best])) best = i;
    for (int64_t i = 0; i < G; i++)
        if (!isnan(r[i]) && i != best && r[i] > second) second = r[i];
    if (best >= 0 && isfinite(second)) advantage[best] = advantage_or_zero((r[best] - second) / (std + 1e-6));
}

/* The baseline of OPO: the mean reward, weighted by the completions' lengths. */
static inline double advantage_length_baseline(const float *r, const int32_t *offset, int64_t G) {
    double sum = 0, tokens = 0;
    for (int64_t i = 0; i < G; i++) {
        if (isnan(r[i])) continue;
        sum += (double)(offset[i + 1] - offset[i]) * (double)r[i];
        tokens += offset[i + 1] - offset[i];
    }
    return sum / tokens;
}

/* The estimators of this header, except optimal_token_baseline. reward, advantage: (groups, G); offset: (groups * G + 1) of the
 * completions' tokens; k: of pass_k. */
static inline void advantage_estimate(AdvantageEstimator kind, const float *reward, const int32_t *offset,
                                      int64_t groups, int64_t G, int64_t k, float *advantage, AdvantageStats *stats) {
    int64_t equal = 0;
    advantage_batch_stats(reward, groups * G, stats);
    for (int64_t g = 0; g < groups; g++) equal += !advantage_group_differs(reward + g * G, G);
    const double alpha = equal < groups ? (double)groups / (double)(groups - equal) : 0;
    for (int64_t g = 0; g < groups; g++) {
        const float *r = reward + g * G;
        float *A = advantage + g * G;
        const Spread group = spread_of(r, G, 1);
        const double baseline = kind == ADVANTAGE_OPO ? advantage_length_baseline(r, offset + g * G, G) : group.mean;
        const double factor = kind == ADVANTAGE_GPG      ? alpha
                              : kind == ADVANTAGE_MAX_RL ? (group.mean > 0 ? 1 / group.mean : 0)
                                                         : 1;
        const bool pass = kind == ADVANTAGE_PASS_K || kind == ADVANTAGE_GRPO_PASSK;
        for (int64_t i = 0; i < G; i++)
            A[i] = pass || group.count < 2 ? 0 : advantage_or_zero(factor * (r[i] - baseline));
        if (kind == ADVANTAGE_PASS_K) advantage_pass_k(r, G, group.count, k, A);
        if (kind == ADVANTAGE_GRPO_PASSK) advantage_best_of_two(r, G, group.std, A);
    }
    stats->frac_reward_zero_std = (double)equal / (double)groups;
}

/* What the optimal token baseline needs of the old policy, and what it writes. Tokens of completion i are [offset[i],
 * offset[i + 1]). */
typedef struct TokenBaseline {
    const int32_t *offset;   /* (completions + 1) */
    const float *logp;       /* (tokens) log p of the drawn token */
    const float *log_square; /* (tokens) log sum_v p_v^2 */
    float *advantage;        /* (tokens) A_it */
    float *addition;         /* (tokens) A_it minus the advantage of the completion */
} TokenBaseline;

/* The number of tokens of a group's scored completions up to which the baseline is not 0: that of the second longest one. */
static inline int32_t advantage_shared_length(const float *r, const int32_t *offset, int64_t G) {
    int32_t longest = 0, second = 0;
    for (int64_t i = 0; i < G; i++) {
        const int32_t T = isnan(r[i]) ? 0 : offset[i + 1] - offset[i];
        second = T > longest ? longest : T > second ? T : second;
        longest = T > longest ? T : longest;
    }
    return second;
}

/* The tokens of one group; r and offset begin at its first completion. */
static inline void advantage_token_group(const TokenBaseline *x, const float *r, const int32_t *offset, int64_t G,
                                         const float *advantage) {
    double W[G];
    const int32_t shared = advantage_shared_length(r, offset, G);
    int32_t longest = 0;
    for (int64_t i = 0; i < G; i++) {
        W[i] = 0;
        longest = offset[i + 1] - offset[i] > longest ? offset[i + 1] - offset[i] : longest;
    }
    for (int32_t t = 0; t < longest; t++) {
        double weighted = 0, weights = 1e-8;
        for (int64_t i = 0; i < G; i++) {
            const int32_t at = offset[i] + t;
            if (at >= offset[i + 1] || isnan(r[i])) continue;
            W[i] += 1 - 2 * exp((double)x->logp[at]) + exp((double)x->log_square[at]);
            weighted += W[i] * (double)r[i];
            weights += W[i];
        }
        for (int64_t i = 0; i < G; i++) {
            const int32_t at = offset[i] + t;
            if (at >= offset[i + 1]) continue;
            const double A = isnan(r[i]) ? 0 : (double)r[i] - (t < shared ? weighted / weights : 0);
            x->advantage[at] = (float)A;
            x->addition[at] = (float)(A - (double)advantage[i]);
        }
    }
}

/* reward: (groups, G); advantage: (groups, G) those of the completions, with the mean as the baseline. The tokens of a group
 * with fewer than two rewards have the advantage 0. */
static inline void advantage_tokens(const TokenBaseline *x, const float *reward, int64_t groups, int64_t G,
                                    float *advantage, AdvantageStats *stats) {
    advantage_group(reward, groups, G, SCALE_NONE, advantage, stats);
    for (int64_t g = 0; g < groups; g++) {
        if (spread_of(reward + g * G, G, 1).count > 1) {
            advantage_token_group(x, reward + g * G, x->offset + g * G, G, advantage + g * G);
            continue;
        }
        for (int32_t t = x->offset[g * G]; t < x->offset[(g + 1) * G]; t++) x->advantage[t] = x->addition[t] = 0;
    }
}

#endif
