/* calibration.h - calibration of a model's probabilities: reliability table and expected calibration error (ECE).
 *
 * Predictions p for a yes-or-no question are sorted into bins of equal width over [low, 1]. In each bin the mean of p
 * is compared with the fraction that came true:
 *
 *   ECE = sum_b n_b / n |true_b / n_b - sum_b p / n_b|              (Naeini et al. 2015; Guo et al. 2017, eq. 3)
 *
 * For labels, p is the predicted probability of label 1 and low is 0. A preference has no natural direction (the order
 * of the completions is arbitrary): p is the probability of the completion with the higher score, so low is 1/2, and it
 * came true if that completion was the chosen one; a tie counts as half true.
 *
 *     Calibration c = calibration_new(0.5);
 *     calibration_add_pair(&c, score_chosen - score_rejected);
 *     double ece = calibration_error(&c);
 */
#ifndef LLMC_REWARD_CALIBRATION_H
#define LLMC_REWARD_CALIBRATION_H

#include "../loss/scalar.h" /* log_sigmoid, sigmoid */

enum { CALIBRATION_BINS = 10 };

typedef struct CalibrationBin {
    double count, predicted, right; /* number of predictions; sum of p; number that came true */
} CalibrationBin;

typedef struct Calibration {
    double low;
    struct {
        double count;
        double log_loss; /* -ln of the probability of what came true */
        CalibrationBin bin[CALIBRATION_BINS];
    } sum; /* doubles only, so that ranks can add them */
} Calibration;

static inline Calibration calibration_new(double low) { return (Calibration){.low = low}; }

/* The lower edge of a bin; bin CALIBRATION_BINS has the edge 1. */
static inline double calibration_edge(const Calibration *c, int bin) {
    return c->low + (1 - c->low) * bin / CALIBRATION_BINS;
}

/* Adds a prediction p in [low, 1]. right: 1 if it came true, 0 if not, 0.5 for a tie. */
static inline void calibration_add(Calibration *c, double p, double right) {
    int i = (int)((p - c->low) / (1 - c->low) * CALIBRATION_BINS);
    if (i < 0) i = 0;
    if (i >= CALIBRATION_BINS) i = CALIBRATION_BINS - 1;
    c->sum.count++;
    c->sum.bin[i].count++;
    c->sum.bin[i].predicted += p;
    c->sum.bin[i].right += right;
}

/* Adds a preference. difference: chosen score - rejected score, as a Bradley-Terry logit. NaN is left out. */
static inline void calibration_add_pair(Calibration *c, double difference) {
    if (isnan(difference)) return;
    c->sum.log_loss -= log_sigmoid(difference);
    calibration_add(c, sigmoid(fabs(difference)), difference > 0 ? 1 : difference < 0 ? 0 : 0.5);
}

/* Adds a label (1, 0, or the probability of 1) predicted with the logit s. NaN is left out. */
static inline void calibration_add_label(Calibration *c, double s, double label) {
    if (isnan(s)) return;
    if (label > 0) c->sum.log_loss -= label * log_sigmoid(s);
    if (label < 1) c->sum.log_loss -= (1 - label) * log_sigmoid(-s);
    calibration_add(c, sigmoid(s), label);
}

/* The ECE; NaN if there are no predictions. */
static inline double calibration_error(const Calibration *c) {
    double sum = 0;
    for (int i = 0; i < CALIBRATION_BINS; i++) sum += fabs(c->sum.bin[i].right - c->sum.bin[i].predicted);
    return c->sum.count > 0 ? sum / c->sum.count : NAN;
}

#endif
