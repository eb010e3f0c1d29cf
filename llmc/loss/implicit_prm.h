/* implicit_prm.h - implicit process rewards: the training of their model on outcomes, and advantages from both (PRIME: Cui et
 * al. 2025, "Process Reinforcement through Implicit Rewards", 2502.01456).
 *
 * A language model pi_phi, the implicit process reward model, and a frozen reference give every token a reward:
 *
 *   r_t    beta q_t,   q_t = log pi_phi(y_t) - log ref(y_t)                                           eq. 3
 *   loss   mean_y -(o log sigma(r) + (1 - o) log(1 - sigma(r))),   r = sum_t r_t                      algorithm 1, line 8
 *          over the completions of the optimizer batch; o: outcome of y, from 0 (wrong) to 1 (right)
 *   A_t    dpo_coef sum_(s >= t) gamma^(s-t) a_s + gt_coef n / (n - 1) (o_i - mean_j o_j)             eq. 5
 *          a_s = n / (n - 1) (r_s - mean_j rbar_j),   rbar_j = mean over the tokens of completion j of r
 *          over the n completions of a prompt that count; the policy's loss is PPO's on whitened A_t  eq. 6, gae.h, ppo.h
 *
 * The codes of the authors (PRIME-RL/PRIME) and of verl (recipe/prime) agree on the loss and on A_t;
 * tests/golden/implicit_prm.txt holds values that the latter computed. Where they or the paper differ:
 *
 *   a_s          is that of both codes. Eq. 5 subtracts the mean of rbar over the other completions from r_s, which is
 *                a_s - (r_s - rbar_i) / (n - 1): for gamma 1 both sum to the same over a completion.
 *   whitening    is in both codes, not in the paper, and so are the two weights.
 *   last token   It has a process reward, as in the paper and in the authors' code. verl leaves it out.
 *   whole        puts the sum over a completion at its last token, as the authors' code does. verl's line for it fails.
 *   batch_norm   divides r by the largest |sum_(s >= t) r_s|, so that beta has no effect on A_t. Both codes take the largest
 *                of a rank's completions. Here it is that of the generation, so that nothing depends on the number of ranks.
 *   gamma        discounts the process rewards only, as in the paper.
 *
 * Tokens of completion i are [offset[i], offset[i+1]) of every per-token array; completions of a prompt are adjacent. Inputs
 * and outputs are float, sums are double.
 *
 *     ImplicitPrmBatch b;
 *     ImplicitPrmConfig c = implicit_prm_config();
 *     loss += implicit_prm_loss(&c, 128, &b, dlogp);                   // each micro-batch; 128 completions in the batch
 *     implicit_prm_rewards(&c, &b, reward);                            // the whole generation
 *     implicit_prm_advantages(&c, &b, reward, 4, advantage);           // 4 completions per prompt; then whiten()
 */
#ifndef LLMC_LOSS_IMPLICIT_PRM_H
#define LLMC_LOSS_IMPLICIT_PRM_H

#include "advantage.h" /* spread_of, AdvantageStats, Spread, advantage_rloo */
#include "reward.h"    /* RewardLoss, loss_binary */

#define PRM_GRANULARITY_CHOICES "token|whole"
#define PRM_NORM_CHOICES        "batch_norm|none"
typedef enum { PRM_TOKEN, PRM_WHOLE } PrmGranularity; /* in the order of PRM_GRANULARITY_CHOICES */
typedef enum { PRM_BATCH_NORM, PRM_NO_NORM } PrmNorm; /* in the order of PRM_NORM_CHOICES */

typedef struct ImplicitPrmConfig {
    double beta;              /* of r_t and of the loss; verl's beta_train */
    double dpo_coef, gt_coef; /* weights of process and outcome; verl's reward_dpo_coef and reward_gt_coef */
    double gamma;
    int granularity, norm; /* a PrmGranularity, a PrmNorm */
} ImplicitPrmConfig;

/* Whole completions. */
typedef struct ImplicitPrmBatch {
    int32_t completions;
    const int32_t *offset;        /* (completions + 1) */
    const float *outcome;         /* (completions) from 0 to 1 */
    const uint8_t *counts;        /* (completions) 0: left out */
    const float *logp, *ref_logp; /* (tokens) of the process reward model and of the reference */
} ImplicitPrmBatch;

/* Means over the completions that count, under verl's names. */
typedef struct ImplicitPrmStats {
    double reward, raw_reward; /* sums over a completion of the process rewards, and of q_t */
    double dpo_acc;     /* share of pairs of a prompt, weighted by |o_i - o_j|, whose rewards are in the outcomes'
                                  order; 0.5 for a prompt with equal outcomes */
    double dpo_acc_abs; /* share of completions whose reward has the sign of o - 1/2 */
} ImplicitPrmStats;

/* verl's defaults. */
static inline ImplicitPrmConfig implicit_prm_config(void) {
    return (ImplicitPrmConfig){.beta = 0.05, .dpo_coef = 5, .gt_coef = 5, .gamma = 1};
}

/* The sum of q_t over completion i. */
static inline double implicit_prm_sum(const ImplicitPrmBatch *b, int32_t i) {
    double sum = 0;
    for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) sum += (double)b->logp[t] - b->ref_logp[t];
    return sum;
}

/* Returns the micro-batch's part of the loss and writes its gradient with respect to logp: (tokens). completions: of the
 * optimizer batch that count. */
static inline double implicit_prm_loss(const ImplicitPrmConfig *c, double completions, const ImplicitPrmBatch *b,
                                       float *dlogp) {
    const RewardLoss plain = {0};
    double loss = 0;
    for (int32_t i = 0; i < b->completions; i++) {
        float slope = 0;
        if (b->counts[i]) {
            const float r = (float)(c->beta * implicit_prm_sum(b, i));
            loss += loss_binary(&plain, &r, b->outcome + i, 1, completions, &slope);
        }
        for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) dlogp[t] = (float)(c->beta * slope);
    }
    return loss;
}

/* The largest |sum_(s >= t) r_s| over the tokens of the completions that count. */
static inline double implicit_prm_largest_return(const ImplicitPrmBatch *b, const float *reward) {
    double largest = 0;
    for (int32_t i = 0; i < b->completions; i++) {
        double sum = 0;
        for (int32_t t = b->offset[i + 1] - 1; t >= b->offset[i] && b->counts[i]; t--) {
            sum += reward[t];
            largest = fmax(largest, fabs(sum));
        }
    }
    return largest;
}

/* Writes the process rewards r_t of a generation: (tokens), 0 for completions that do not count. */
static inline void implicit_prm_rewards(const ImplicitPrmConfig *c, const ImplicitPrmBatch *b, float *reward) {
    for (int32_t i = 0; i < b->completions; i++) {
        const bool token = c->granularity == PRM_TOKEN && b->counts[i];
        for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++)
            reward[t] = token ? (float)(c->beta * ((double)b->logp[t] - b->ref_logp[t])) : 0;
        if (b->counts[i] && !token) reward[b->offset[i + 1] - 1] = (float)(c->beta * implicit_prm_sum(b, i));
    }
    if (c->norm == PRM_NO_NORM) return;
    const double scale = 1 / (implicit_prm_largest_return(b, reward) + 1e-6);
    for (int32_t t = 0; t < b->offset[b->completions]; t++) reward[t] = (float)(reward[t] * scale);
}

/* Writes A_t of the completions [first, first + G) of one prompt. */
static inline void implicit_prm_group(const ImplicitPrmConfig *c, const ImplicitPrmBatch *b, const float *reward,
                                      int32_t first, int32_t G, float *advantage) {
    float mean[G], outcome[G], of_outcome[G];
    AdvantageStats unused;
    for (int32_t k = 0, i = first; k < G; k++, i++) {
        const int32_t at = b->offset[i];
        mean[k] = b->counts[i] ? (float)spread_of(reward + at, b->offset[i + 1] - at, 1).mean : NAN;
        outcome[k] = b->counts[i] ? b->outcome[i] : NAN;
    }
    advantage_rloo(outcome, 1, G, false, of_outcome, &unused);
    const Spread means = spread_of(mean, G, 1);
    const double n = (double)means.count;
    for (int32_t k = 0, i = first; k < G; k++, i++) {
        const bool compared = b->counts[i] && means.count > 1;
        double sum = 0;
        for (int32_t t = b->offset[i + 1] - 1; t >= b->offset[i]; t--) {
            if (compared) sum = n / (n - 1) * (reward[t] - means.mean) + c->gamma * sum;
            advantage[t] = (float)(c->dpo_coef * sum + (compared ? c->gt_coef * of_outcome[k] : 0));
        }
    }
}

/* Writes A_t of a generation with G completions per prompt, before they are whitened: (tokens), 0 for completions that do not
 * count and for a prompt of which one counts. reward: from implicit_prm_rewards(). */
static inline void implicit_prm_advantages(const ImplicitPrmConfig *c, const ImplicitPrmBatch *b, const float *reward,
                                           int32_t G, float *advantage) {
    for (int32_t first = 0; first < b->completions; first += G) implicit_prm_group(c, b, reward, first, G, advantage);
}

/* dpo_acc of one prompt; NaN if fewer than two completions count. sum: (completions) of their rewards. */
static inline double implicit_prm_pairs(const ImplicitPrmBatch *b, const double *sum, int32_t first, int32_t G) {
    double right = 0, weight = 0;
    int32_t pairs = 0;
    for (int32_t i = first; i < first + G; i++)
        for (int32_t j = i + 1; j < first + G; j++) {
            if (!b->counts[i] || !b->counts[j]) continue;
            const double gap = (double)b->outcome[i] - b->outcome[j];
            right += (sum[i] > sum[j]) == (gap > 0) ? fabs(gap) : 0;
            weight += fabs(gap);
            pairs++;
        }
    return !pairs ? NAN : weight > 0 ? right / weight : 0.5;
}

/* Statistics of a generation; NaN if no completion counts. sum: (completions) is scratch memory. */
static inline ImplicitPrmStats implicit_prm_stats(const ImplicitPrmBatch *b, const float *reward, int32_t G,
                                                  double *sum) {
    ImplicitPrmStats s = {0};
    double n = 0, prompts = 0;
    for (int32_t i = 0; i < b->completions; i++) {
        sum[i] = 0;
        if (!b->counts[i]) continue;
        for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) sum[i] += reward[t];
        const double side = (double)b->outcome[i] - 0.5;
        s.reward += sum[i];
        s.raw_reward += implicit_prm_sum(b, i);
        s.dpo_acc_abs += (sum[i] > 0) - (sum[i] < 0) == (side > 0) - (side < 0);
        n++;
    }
    for (int32_t first = 0; first < b->completions; first += G) {
        const double share = implicit_prm_pairs(b, sum, first, G);
        if (isnan(share)) continue;
        s.dpo_acc += share;
        prompts++;
    }
    return (ImplicitPrmStats){s.reward / n, s.raw_reward / n, s.dpo_acc / prompts, s.dpo_acc_abs / n};
}

#endif
