/* calibration.h - do a model's probabilities hold? The reliability table and the expected calibration error.
 *
 * Predictions p of a yes-or-no question are sorted into bins of equal width over [low, 1]; in each bin the mean of p is held
 * against the share that came true:
 *
 *   ECE = sum_b n_b / n |true_b / n_b - sum_b p / n_b|              (Naeini et al. 2015; Guo et al. 2017, eq. 3)
 *
 * For a label, p is its probability and low is 0. For a preference, the question has no side of its own (which answer
 * stands first means nothing): p is the probability of the answer that is scored higher, so low is 1/2, and it came true
 * where that answer was the chosen one; a tie is half true.
 *
 *     Calibration c = calibration_new(0.5);
 *     calibration_add_pair(&c, score_chosen - score_rejected);
 *     calibration_error(&c);
 */
#ifndef LLMC_REWARD_CALIBRATION_H
#define LLMC_REWARD_CALIBRATION_H

#include "../loss/reward.h"

enum { CALIBRATION_BINS = 10 };

typedef struct CalibrationBin {
    double count, predicted, right; /* sums */
} CalibrationBin;

typedef struct Calibration {
    double low, count;
    double log_loss; /* sum of -ln of the probability given to what came true */
    CalibrationBin bin[CALIBRATION_BINS];
} Calibration;

static inline Calibration calibration_new(double low) { return (Calibration){.low = low}; }

/* The bin's lower edge; that of bin CALIBRATION_BINS is 1. */
static inline double calibration_edge(const Calibration *c, int bin) {
    return c->low + (1 - c->low) * bin / CALIBRATION_BINS;
}

/* A prediction p in [low, 1] of which `right` in [0, 1] came true. The two below leave out NaN. */
static inline void calibration_add(Calibration *c, double p, double right) {
    int i = (int)((p - c->low) / (1 - c->low) * CALIBRATION_BINS);
    if (i < 0) i = 0;
    if (i >= CALIBRATION_BINS) i = CALIBRATION_BINS - 1;
    c->count++;
    c->bin[i].count++, c->bin[i].predicted += p, c->bin[i].right += right;
}

/* A preference of which the chosen answer scored `difference` more than the rejected one, in nats of Bradley-Terry. */
static inline void calibration_add_pair(Calibration *c, double difference) {
    if (isnan(difference)) return;
    c->log_loss -= reward_log_sigmoid(difference);
    calibration_add(c, reward_sigmoid(fabs(difference)), difference > 0 ? 1 : difference < 0 ? 0 : 0.5);
}

/* A label (1, 0) that was given the logit s. */
static inline void calibration_add_label(Calibration *c, double s, int label) {
    if (isnan(s)) return;
    c->log_loss -= reward_log_sigmoid(label ? s : -s);
    calibration_add(c, reward_sigmoid(s), label);
}

/* ECE; NaN without predictions. */
static inline double calibration_error(const Calibration *c) {
    double sum = 0;
    for (int i = 0; i < CALIBRATION_BINS; i++) sum += fabs(c->bin[i].right - c->bin[i].predicted);
    return c->count > 0 ? sum / c->count : NAN;
}

#endif
