/* overoptimisation.h - fit of proxy and gold reward as functions of sqrt(KL).
 *
 * A policy that is optimised against a proxy of the actual goal first improves both rewards. Later the proxy reward
 * keeps rising while the gold reward, which is not optimised, falls. For reinforcement learning Gao et al. 2022
 * (2210.10760), eq. 1, found
 *
 *   R(d) = d (alpha - beta log d),   d = sqrt(KL(pi || start))
 *
 * with its maximum at d = exp(alpha / beta - 1). Here the reward at the start, R0, is fitted together with alpha and
 * beta by least squares, because it is measured with noise like every other point.
 *
 * Requires the metrics objective/kl, objective/scores and objective/gold, at least eight points, and a KL that varies.
 *
 *     GaoFit f = overoptimisation_fit(&history, "objective/gold");
 *     if (f.good) printf("highest at a KL of %g\n", f.peak * f.peak);
 */
#ifndef LLMC_REPORT_OVEROPTIMISATION_H
#define LLMC_REPORT_OVEROPTIMISATION_H

#include "../base/error.h" /* xcalloc */
#include "history.h"       /* History, history_find, Series */

typedef struct GaoFit {
    bool good; /* false: too few points, or all at one distance */
    double R0, alpha, beta;
    double r2;          /* fraction of the variance explained by the curve */
    double farthest;    /* largest d */
    double peak, value; /* d of the maximum within [0, farthest], and R(d) there */
} GaoFit;

static inline double gao_reward(const GaoFit *f, double d) {
    return f->R0 + (d > 0 ? d * (f->alpha - f->beta * log(d)) : 0);
}

/* Solves A x = b for a symmetric positive definite 3 x 3 matrix A; false if A is singular. */
static inline bool gao_solve(double A[3][3], double b[3], double x[3]) {
    for (int k = 0; k < 3; k++) {
        if (!(A[k][k] > 1e-9)) return false;
        for (int i = k + 1; i < 3; i++) {
            const double factor = A[i][k] / A[k][k];
            for (int j = k; j < 3; j++) A[i][j] -= factor * A[k][j];
            b[i] -= factor * b[k];
        }
    }
    for (int i = 2; i >= 0; i--) {
        x[i] = b[i];
        for (int j = i + 1; j < 3; j++) x[i] -= A[i][j] * x[j];
        x[i] /= A[i][i];
    }
    return true;
}

/* Fits the curve to n points (d, R); non-finite points are ignored. */
static inline GaoFit gao_fit(const double *d, const double *R, size_t n) {
    GaoFit f = {0};
    double A[3][3] = {{0}}, b[3] = {0}, x[3], points = 0, mean = 0, total = 0, rest = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(d[i]) || !isfinite(R[i]) || d[i] < 0) continue;
        const double basis[3] = {1, d[i], d[i] > 0 ? -d[i] * log(d[i]) : 0};
        for (int j = 0; j < 3; j++) {
            for (int k = 0; k < 3; k++) A[j][k] += basis[j] * basis[k];
            b[j] += basis[j] * R[i];
        }
        points++;
        mean += R[i];
        f.farthest = fmax(f.farthest, d[i]);
    }
    if (points < 8 || !gao_solve(A, b, x)) return f;
    f.R0 = x[0];
    f.alpha = x[1];
    f.beta = x[2];
    f.good = true;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(d[i]) || !isfinite(R[i]) || d[i] < 0) continue;
        total += (R[i] - mean / points) * (R[i] - mean / points);
        rest += (R[i] - gao_reward(&f, d[i])) * (R[i] - gao_reward(&f, d[i]));
    }
    f.r2 = total > 0 ? 1 - rest / total : 0;
    const double top = f.beta > 0 ? exp(f.alpha / f.beta - 1) : f.farthest;
    f.peak = top < f.farthest ? top : f.farthest;
    if (gao_reward(&f, 0) > gao_reward(&f, f.peak)) f.peak = 0;
    f.value = gao_reward(&f, f.peak);
    return f;
}

/* Collects the points of a run: d and the reward `key` at the steps that have both. Returns their number. The caller
 * frees d and R. */
static inline size_t overoptimisation_points(const History *h, const char *key, double **d, double **R) {
    const Series *kl = history_find(h, "objective/kl"), *y = history_find(h, key);
    size_t n = 0;
    *d = *R = NULL;
    if (!kl || !y) return 0;
    *d = (double *)xcalloc(kl->count + 1, sizeof **d);
    *R = (double *)xcalloc(kl->count + 1, sizeof **R);
    for (size_t i = 0, k = 0; i < kl->count; i++) {
        while (k < y->count && y->steps[k] < kl->steps[i]) k++;
        if (k == y->count || y->steps[k] != kl->steps[i] || !isfinite(kl->values[i]) || !isfinite(y->values[k]))
            continue;
        (*d)[n] = sqrt(fmax(kl->values[i], 0));
        (*R)[n++] = y->values[k];
    }
    return n;
}

static inline GaoFit overoptimisation_fit(const History *h, const char *key) {
    double *d, *R;
    const size_t n = overoptimisation_points(h, key, &d, &R);
    const GaoFit f = gao_fit(d, R, n);
    free(d), free(R);
    return f;
}

#endif
