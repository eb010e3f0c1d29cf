/* reward.h - losses of reward models, as functions of scores (the outputs of a linear head at selected tokens).
 *
 *   Bradley-Terry   pairs (c, r) with scores s_c, s_r and margin m:   x = s_c - s_r - m
 *                     L = mean[ -(1 - e) log sigma(x) - e log sigma(-x) ] + c mean[ (s_c + s_r)^2 ]
 *     with soft labels, p = sigma(m) is the probability that c is better (Lee et al. 2023, RLAIF, 2.2):   d = s_c - s_r
 *                     L = mean[ -p log sigma(d) - (1 - p) log sigma(-d) ] + c mean[ (s_c + s_r)^2 ]
 *   binary          labels y in [0, 1]:   t = y (1 - e) + (1 - y) e
 *                     L = mean[ -t log sigma(s) - (1 - t) log sigma(-s) ]
 *
 * Label smoothing e is in [0, 0.5), 0 for none; c is the weight of the centering term. N, the normaliser, is the number
 * of pairs or labels of the WHOLE optimizer batch, so the losses and gradients of micro-batches add up to those of the
 * batch. Scores and gradients are float, sums are double.
 *
 * Binary cross-entropy on one score equals the two-class softmax of a token classifier (TRL's PRM trainer) with
 * s = z_1 - z_0: the loss and the gradient of z_1 are the same; the gradient of z_0 has the opposite sign.
 *
 *     RewardLoss config = {.label_smoothing = 0, .center = 0.01};
 *     loss += loss_bradley_terry(&config, score, margin, pairs, N, dscore);
 *     model_backward(&model, &work, &batch, 1.0f, NULL, NULL, dscore);     // model/transformer.h
 */
#ifndef LLMC_LOSS_REWARD_H
#define LLMC_LOSS_REWARD_H

#include "scalar.h" /* log_sigmoid, sigmoid */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct RewardLoss {
    double label_smoothing; /* e: the probability that a label is wrong (Mitchell 2023, cDPO, eq. 3, for preferences) */
    double center;          /* c (Eisenstein et al. 2023, 2312.09244, eq. 2); 0: none */
    bool soft;              /* the margins are log-odds of the labels; without smoothing */
} RewardLoss;

/* Bradley-Terry (Ouyang et al. 2022, eq. 1), with the margin of Touvron et al. 2023 (Llama 2, eq. 2). Without smoothing
 * this is TRL's RewardTrainer.compute_loss.
 *   dL/ds_c = [ sigma(x) - (1 - e) + 2 c (s_c + s_r) ] / N,   dL/ds_r = [ (1 - e) - sigma(x) + 2 c (s_c + s_r) ] / N
 * score: (2 pairs) chosen, rejected, chosen, ...; margin: (pairs), NULL means 0; dscore: (2 pairs) is written, NULL
 * skips it. Returns this micro-batch's contribution to L. */
static inline double loss_bradley_terry(const RewardLoss *o, const float *score, const float *margin, int64_t pairs,
                                        double normaliser, float *dscore) {
    const double N = normaliser;
    double sum = 0;
    for (int64_t i = 0; i < pairs; i++) {
        const double chosen = score[2 * i], rejected = score[2 * i + 1], both = chosen + rejected;
        const double m = margin ? margin[i] : 0, x = chosen - rejected - (o->soft ? 0 : m);
        const double e = o->soft ? sigmoid(-m) : o->label_smoothing; /* probability that rejected is better */
        const double gap = sigmoid(x) - (1 - e), pull = 2 * o->center * both;
        sum -= (1 - e) * log_sigmoid(x);
        if (e > 0) sum -= e * log_sigmoid(-x);
        sum += o->center * both * both;
        if (dscore) {
            dscore[2 * i] = (float)((gap + pull) / N);
            dscore[2 * i + 1] = (float)((pull - gap) / N);
        }
    }
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
