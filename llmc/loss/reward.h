/* reward.h - losses of reward models, as functions of scores (the outputs of a linear head at selected tokens).
 *
 *   Bradley-Terry   pairs (c, r) with scores s_c, s_r and margin m:   x = s_c - s_r - m
 *                     L = mean[ -(1 - e) log sigma(x) - e log sigma(-x) ] + c mean[ (s_c + s_r)^2 ]
 *     with soft labels, p = sigma(m) is the probability that c is better (Lee et al. 2023, RLAIF, 2.2):   d = s_c - s_r
 *                     L = mean[ -p log sigma(d) - (1 - p) log sigma(-d) ] + c mean[ (s_c + s_r)^2 ]
 *   rankings        completions 1 ... K of one prompt, from the best to the worst
 *     pairwise        the same for each of the K (K-1) / 2 pairs (i, j), i < j, and their mean
 *     plackett_luce   L = mean[ -sum_k log( exp s_k / sum_(j >= k) exp s_j ) ] + the pairs' mean of the centering term
 *     Every ranking has the same weight, whatever its K. A ranking of two is a pair: both losses are Bradley-Terry's.
 *   binary          labels y in [0, 1]:   t = y (1 - e) + (1 - y) e
 *                     L = mean[ -t log sigma(s) - (1 - t) log sigma(-s) ]
 *
 * Label smoothing e is in [0, 0.5), 0 for none; c is the weight of the centering term. N, the normaliser, is the number
 * of rankings or labels of the WHOLE optimizer batch, so the losses and gradients of micro-batches add up to those of
 * the batch. Scores and gradients are float, sums are double.
 *
 * Binary cross-entropy on one score equals the two-class softmax of a token classifier (TRL's PRM trainer) with
 * s = z_1 - z_0: the loss and the gradient of z_1 are the same; the gradient of z_0 has the opposite sign.
 *
 *     RewardLoss config = {.label_smoothing = 0, .center = 0.01};
 *     const RankingBatch b = {.rankings = pairs, .score = score, .margin = margin}; // .count: of longer rankings
 *     loss += loss_ranking(&config, &b, N, dscore);
 *     model_backward(&model, &work, &batch, 1.0f, NULL, NULL, dscore);     // model/transformer.h
 */
#ifndef LLMC_LOSS_REWARD_H
#define LLMC_LOSS_REWARD_H

#include "../base/error.h" /* xcalloc */
#include "scalar.h"        /* log_sigmoid, sigmoid */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RANKING_LOSS_CHOICES "pairwise|plackett_luce"
/* in the order of RANKING_LOSS_CHOICES */
typedef enum { RANKING_PAIRWISE, RANKING_PLACKETT_LUCE } RankingLoss;

typedef struct RewardLoss {
    int ranking;            /* RankingLoss: of rankings of more than two completions */
    double label_smoothing; /* e: the probability that a label is wrong (Mitchell 2023, cDPO, eq. 3, for preferences) */
    double center;          /* c (Eisenstein et al. 2023, 2312.09244, eq. 2); 0: none */
    bool soft;              /* the margins are log-odds of the labels; without smoothing */
} RewardLoss;

/* A micro-batch of rankings. */
typedef struct RankingBatch {
    int64_t rankings;
    const int32_t *count; /* (rankings) number of completions of each, at least 2; NULL: all are pairs */
    const float *score;   /* (completions) of one ranking after another, from the best completion to the worst */
    const float *margin;  /* (rankings) how much better the first of a pair is; 0 for longer rankings; NULL: all 0 */
} RankingBatch;

/* Bradley-Terry on each pair of a ranking of n, and their mean (Ouyang et al. 2022, 2203.02155, eq. 1), with the margin of
 * Touvron et al. 2023 (Llama 2, eq. 2). On a pair without smoothing this is TRL's RewardTrainer.compute_loss. Per pair
 *   dL/ds_c = sigma(x) - (1 - e) + 2 c (s_c + s_r),   dL/ds_r = (1 - e) - sigma(x) + 2 c (s_c + s_r)
 * score: (n). Adds the loss to *sum and the gradient to slope: (n). */
static inline void ranking_pairwise(const RewardLoss *o, const float *score, int32_t n, double m, double *sum,
                                    double *slope) {
    const double weight = 2 / ((double)n * (n - 1));
    const double e = o->soft ? sigmoid(-m) : o->label_smoothing; /* probability that the second one is better */
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = i + 1; j < n; j++) {
            const double chosen = score[i], rejected = score[j], both = chosen + rejected;
            const double x = chosen - rejected - (o->soft ? 0 : m);
            const double gap = sigmoid(x) - (1 - e), pull = 2 * o->center * both;
            *sum -= weight * (1 - e) * log_sigmoid(x);
            if (e > 0) *sum -= weight * e * log_sigmoid(-x);
            *sum += weight * o->center * both * both;
            slope[i] += weight * (gap + pull);
            slope[j] += weight * (pull - gap);
        }
}

/* Plackett-Luce (Plackett 1975; Luce 1959): completion k is the best of those that are left with probability
 * exp(s_k - z_k), z_k = log sum_(j >= k) exp s_j.   dL/ds_j = sum_(k <= j) exp(s_j - z_k) - 1
 * score, slope: (n). */
static inline void ranking_plackett_luce(const RewardLoss *o, const float *score, int32_t n, double *sum,
                                         double *slope) {
    const double weight = 2 / ((double)n * (n - 1));
    for (int32_t k = 0; k + 1 < n; k++) {
        double most = score[k], rest = 0;
        for (int32_t j = k + 1; j < n; j++) most = score[j] > most ? score[j] : most;
        for (int32_t j = k; j < n; j++) rest += exp(score[j] - most);
        const double z = most + log(rest);
        *sum += z - score[k];
        slope[k] -= 1;
        for (int32_t j = k; j < n; j++) {
            const double both = (double)score[k] + score[j];
            slope[j] += exp(score[j] - z);
            if (j == k || o->center == 0) continue;
            *sum += weight * o->center * both * both;
            slope[k] += weight * 2 * o->center * both;
            slope[j] += weight * 2 * o->center * both;
        }
    }
}

/* The loss of rankings. dscore: (completions) is written, NULL skips it. Returns this micro-batch's contribution to L. NaN in,
 * NaN out. */
static inline double loss_ranking(const RewardLoss *o, const RankingBatch *b, double normaliser, float *dscore) {
    const double N = normaliser;
    int32_t most = 2;
    for (int64_t i = 0; b->count && i < b->rankings; i++) most = b->count[i] > most ? b->count[i] : most;
    double sum = 0, *slope = (double *)xcalloc((size_t)most, sizeof *slope);
    const float *score = b->score;
    for (int64_t i = 0; i < b->rankings; i++) {
        const int32_t n = b->count ? b->count[i] : 2;
        for (int32_t k = 0; k < n; k++) slope[k] = 0;
        if (n > 2 && o->ranking == RANKING_PLACKETT_LUCE) ranking_plackett_luce(o, score, n, &sum, slope);
        else ranking_pairwise(o, score, n, b->margin ? b->margin[i] : 0, &sum, slope);
        for (int32_t k = 0; dscore && k < n; k++) *dscore++ = (float)(slope[k] / N);
        score += n;
    }
    free(slope);
    return sum / N;
}

/* Binary cross-entropy: Cobbe et al. 2021 (outcome verifiers, section 4.2), Lightman et al. 2023 (step labels).
 *   dL/ds = (sigma(s) - t) / N
 * A label between 0 and 1 is the probability of 1 (soft labels: Wang et al. 2024, Math-Shepherd, 2312.08935, section 3.3).
 * score, label: (n); dscore: (n) is written, NULL skips it. Returns this micro-batch's contribution to L. */
static inline double loss_binary(const RewardLoss *o, const float *score, const float *label, int64_t n,
                                 double normaliser, float *dscore) {
    const double N = normaliser, e = o->label_smoothing;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const double y = label[i], t = y * (1 - e) + (1 - y) * e, s = score[i];
        if (t > 0) sum -= t * log_sigmoid(s);
        if (t < 1) sum -= (1 - t) * log_sigmoid(-s);
        if (dscore) dscore[i] = (float)((sigmoid(s) - t) / N);
    }
    return sum / N;
}

#endif
