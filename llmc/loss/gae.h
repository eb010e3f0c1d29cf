/* gae.h - per-token rewards, returns and advantages.
 *
 * A completion of n tokens is an episode. V_t is the value of the state in which token t is chosen (computed at the row
 * before it), r_t is the reward of choosing it, and the state after the last token has value V_n = 0. The score s of
 * the whole completion is added to the reward of its LAST token (the end-of-text token if there is one; never padding
 * after it), and every token has a KL penalty:
 *
 *   r_t = -beta k_t + s [t = n-1]         k_t = kl_estimate(log pi(y_t) - log ref(y_t))
 *                                                                          Ziegler et al. 2019 (1909.08593)
 *   G_t = sum_(l >= t) gamma^(l-t) r_l    R = G_0
 *
 *   ppo, a2c             A_t = sum_l (gamma lambda)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t
 *                                                      Schulman et al. 2016 (1506.02438), eq. 16; A2C: Mnih et al. 2016
 *                        with turns as steps of their own: gae_turns()
 *   reinforce            A_t = G_t - mean of R over the OTHER completions of the batch      Williams 1992
 *   rloo                 A_t = R - mean of R over the others of the group                   2402.14740 (advantage.h)
 *   remax                A_t = G_t - score of the greedy completion of the same prompt      Li et al. 2023 (2310.10505)
 *   reinforce++          A_t = whiten(G_t)                                                  Hu 2025 (2501.03262)
 *   reinforce++-baseline A_t = whiten(G_t - mean of R over the group)                       the same
 *
 * The critic's target is A_t + V_t. With lambda = 1 it is G_t. The critic may use a different lambda (VC-PPO: Yuan et
 * al. 2025, 2503.01491), and the policy's may grow with the length: lambda = 1 - 1 / (alpha n) (VAPO: 2504.05118).
 *
 * Arrays are flat: tokens of completion i are at [offset[i], offset[i+1]). counts[i] = 0 excludes a completion from
 * every mean and sets its advantages to 0. Inputs and outputs are float, sums are double.
 *
 *     token_rewards(KL_K1, logp, ref_logp, n, beta, 1.0, reward);     // the score of the completion is 1
 *     gae(reward, value, n, 1.0, 0.95, advantage);
 *     whiten(advantage, offset, completions, counts, true);
 */
#ifndef LLMC_LOSS_GAE_H
#define LLMC_LOSS_GAE_H

#include "kl.h" /* KlEstimator, kl_estimate */
#include <stdbool.h>

/* Writes r_t of one completion of n tokens. ref_logp NULL: no penalty. Returns the sum of k over its tokens, in
 * nats. */
static inline double token_rewards(KlEstimator kind, const float *logp, const float *ref_logp, int32_t n, double beta,
                                   double score, float *reward) {
    double sum = 0;
    for (int32_t t = 0; t < n; t++) {
        const double k = ref_logp ? kl_estimate(kind, (double)logp[t] - ref_logp[t], 0) : 0;
        reward[t] = (float)(-beta * k + (t == n - 1 ? score : 0));
        sum += k;
    }
    return sum;
}

/* Writes G_t of one completion; returns R = G_0. */
static inline double returns_to_go(const float *reward, int32_t n, double gamma, float *G) {
    double sum = 0;
    for (int32_t t = n - 1; t >= 0; t--) {
        sum = reward[t] + gamma * sum;
        G[t] = (float)sum;
    }
    return sum;
}

/* Writes A_t of one completion. */
static inline void gae(const float *reward, const float *value, int32_t n, double gamma, double lambda,
                       float *advantage) {
    double A = 0, next = 0;
    for (int32_t t = n - 1; t >= 0; t--) {
        const double delta = reward[t] + gamma * next - value[t];
        A = delta + gamma * lambda * A;
        advantage[t] = (float)A;
        next = value[t];
    }
}

/* Writes A_t of one completion of several turns, by GAE on two levels. turn: (n) the turn of each token, which never falls. A
 * turn is a step of an episode of turns, with the reward and the value of its last token e:
 *
 *   delta_k = r_(e_k) + Gamma V_(e_(k+1)) - V_(e_k)     A_(e_k) = delta_k + Gamma lambda A_(e_(k+1))
 *
 * and its tokens are an episode that ends with the return A_(e_k) + V_(e_k): before e_k, A_t is that of gae() with this as the
 * reward of e_k. VAGEN (2510.16907) and RAGEN, bi_level_gae; Gamma is their high_level_gamma. */
static inline void gae_turns(const float *reward, const float *value, const int32_t *turn, int32_t n, double gamma,
                             double lambda, double turn_gamma, float *advantage) {
    double of_turn = 0, next = 0, A = 0;
    for (int32_t t = n - 1; t >= 0; t--) {
        if (t == n - 1 || turn[t + 1] != turn[t]) {
            of_turn = reward[t] + turn_gamma * next - value[t] + turn_gamma * lambda * of_turn;
            next = value[t];
            A = of_turn;
        } else A = reward[t] + gamma * value[t + 1] - value[t] + gamma * lambda * A;
        advantage[t] = (float)A;
    }
}

/* lambda for a completion of n tokens: 1 - 1 / (alpha n), at least 0; `lambda` itself if alpha is 0. */
static inline double gae_length_lambda(double lambda, double alpha, int32_t n) {
    return alpha > 0 ? fmax(0, 1 - 1 / (alpha * n)) : lambda;
}

/* A_t = G_t - b. */
static inline void subtract_baseline(const float *G, int32_t n, double b, float *advantage) {
    for (int32_t t = 0; t < n; t++) advantage[t] = (float)(G[t] - b);
}

/* baseline[i] is the mean of R over the completions of i's group of G that count, with or without i itself (with G =
 * completions, all of them are one group). If i does not count or no other does, the baseline is R[i], so the advantage
 * is 0. R, baseline: (completions). */
static inline void mean_baseline(const float *R, const uint8_t *counts, int32_t completions, int32_t G,
                                 bool with_itself, float *baseline) {
    for (int32_t g = 0; g < completions; g += G) {
        double sum = 0, n = 0;
        for (int32_t i = g; i < g + G; i++)
            if (counts[i]) {
                sum += R[i];
                n++;
            }
        for (int32_t i = g; i < g + G; i++)
            baseline[i] = !counts[i] || n < 2 ? R[i] : (float)(with_itself ? sum / n : (sum - R[i]) / (n - 1));
    }
}

/* Mean and variance (divided by n - 1) over the tokens of the completions that count. */
typedef struct Moments {
    double mean, variance, count;
} Moments;

static inline Moments moments_of(const float *x, const int32_t *offset, int32_t completions, const uint8_t *counts) {
    Moments m = {0};
    double squares = 0;
    for (int32_t i = 0; i < completions; i++) {
        if (!counts[i]) continue;
        for (int32_t t = offset[i]; t < offset[i + 1]; t++) {
            m.mean += x[t];
            m.count++;
        }
    }
    m.mean /= fmax(m.count, 1);
    for (int32_t i = 0; i < completions; i++) {
        if (!counts[i]) continue;
        for (int32_t t = offset[i]; t < offset[i + 1]; t++) squares += (x[t] - m.mean) * (x[t] - m.mean);
    }
    m.variance = m.count > 1 ? squares / (m.count - 1) : 0;
    return m;
}

/* x <- (x - mean) / sqrt(variance + 1e-8); the mean is added back unless shift_mean (rewards keep their mean). Tokens
 * of completions that do not count become 0. This is TRL's masked_whiten (Ziegler et al.'s code, sample variance). */
static inline void whiten(float *x, const int32_t *offset, int32_t completions, const uint8_t *counts,
                          bool shift_mean) {
    const Moments m = moments_of(x, offset, completions, counts);
    const double scale = 1 / sqrt(m.variance + 1e-8);
    for (int32_t i = 0; i < completions; i++)
        for (int32_t t = offset[i]; t < offset[i + 1]; t++)
            x[t] = counts[i] ? (float)((x[t] - m.mean) * scale + (shift_mean ? 0 : m.mean)) : 0;
}

/* 1 - Var(G - V) / Var(G): 1 if the critic predicts every return, 0 if it predicts only their mean, NaN if all returns
 * are equal. */
static inline double explained_variance(const float *value, const float *target, const int32_t *offset,
                                        int32_t completions, const uint8_t *counts) {
    double mean = 0, gap = 0, total = 0, rest = 0, n = 0;
    for (int32_t i = 0; i < completions; i++) {
        if (!counts[i]) continue;
        for (int32_t t = offset[i]; t < offset[i + 1]; t++) {
            mean += target[t];
            gap += (double)target[t] - value[t];
            n++;
        }
    }
    for (int32_t i = 0; i < completions; i++) {
        if (!counts[i]) continue;
        for (int32_t t = offset[i]; t < offset[i + 1]; t++) {
            const double a = target[t] - mean / n, b = (double)target[t] - value[t] - gap / n;
            total += a * a;
            rest += b * b;
        }
    }
    return total > 0 ? 1 - rest / total : NAN;
}

#endif
