/* scalar.h - the scalar functions that several objectives use, and the name and value of a metric.
 *
 *     double l = -log_sigmoid(beta * delta), slope = -sigmoid(-beta * delta);
 *     LossMetric out[8];
 *     int n = 0;
 *     METRIC("kl", z);        // appends to the array `out` and counts in `n`
 */
#ifndef LLMC_LOSS_SCALAR_H
#define LLMC_LOSS_SCALAR_H

#include <math.h>

/* 1 / (1 + e^-x), and its logarithm, without overflow for any x. */
static inline double sigmoid(double x) { return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); }
static inline double log_sigmoid(double x) { return x >= 0 ? -log1p(exp(-x)) : x - log1p(exp(x)); }

/* x limited to [low, high]. Unlike fmin and fmax, this propagates NaN, which the trainer must detect. */
static inline double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

typedef struct LossMetric {
    const char *name;
    double value;
} LossMetric;

#define METRIC(name_, value_)                                                                                          \
    out[n++] = (LossMetric) { .name = name_, .value = value_ }

#endif
