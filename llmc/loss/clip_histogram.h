/* clip_histogram.h - how many tokens have which log rho and which advantage, in one optimizer step.
 *
 * The counts show what a clip removes: tokens with A > 0 and rho above 1 + eps_high, and with A < 0 and rho below
 * 1 - eps, have no gradient (loss/policy.h). log rho has 41 bins, of which the outer ones are open; both thresholds of
 * the run are edges between bins, so that the share of clipped tokens that follows from the counts is that of the
 * metric clip_ratio/region_mean. The advantage has 8 rows: four sizes of negative ones, the largest first, and four of
 * positive ones, the largest last. Tokens with A = 0 have a row of their own. Where rho is per completion, so are the
 * counts.
 *
 *     const float advantage[] = {0.5, -0.7};
 *     ClipHistogram h = clip_histogram(log(0.8), log(1.2));
 *     clip_histogram_sizes(&h, advantage, 2);
 *     clip_histogram_add(&h, 0.31, -0.7);
 *     double share = clip_histogram_share(&h, log(0.8), log(1.2));
 */
#ifndef LLMC_LOSS_CLIP_HISTOGRAM_H
#define LLMC_LOSS_CLIP_HISTOGRAM_H

#include "../base/error.h" /* xmalloc */
#include "policy.h"        /* POLICY_GMPO, PolicyLossConfig, POLICY_CISPO, PolicyBatch, ... */
#include <math.h>

enum { CLIP_BINS = 41, CLIP_ROWS = 8 };

typedef struct ClipHistogram {
    double low, high;           /* thresholds of log rho; each is an edge */
    double edge[CLIP_BINS - 1]; /* of log rho, increasing */
    double size[3];             /* quartiles of |A| */
    struct {
        double count[CLIP_ROWS][CLIP_BINS];
        double zero[CLIP_BINS]; /* A = 0 */
    } sum;                      /* doubles only, so that ranks can add them (dist.h) */
} ClipHistogram;

/* Moves the edge nearest to x onto it. */
static inline void clip_histogram_snap(ClipHistogram *h, double x) {
    int nearest = 0;
    for (int i = 1; i < CLIP_BINS - 1; i++)
        if (fabs(h->edge[i] - x) < fabs(h->edge[nearest] - x)) nearest = i;
    h->edge[nearest] = x;
}

/* An empty histogram for the thresholds low < 0 < high of log rho, infinite if there are none. Its edges go from -1 to 1, or over a range of twenty
 * thresholds if they are closer to 0 than 0.05, or beyond one that is farther than 1. */
static inline ClipHistogram clip_histogram(double low, double high) {
    const double far = fmax(isfinite(low) ? -low : 0, isfinite(high) ? high : 0);
    const double range = far > 0 && far < 0.05 ? 20 * far : far > 0.9 ? 1.2 * far : 1;
    ClipHistogram h = {.low = low, .high = high};
    for (int i = 0; i < CLIP_BINS - 1; i++) h.edge[i] = range * (2.0 * i / (CLIP_BINS - 2) - 1);
    if (isfinite(low)) clip_histogram_snap(&h, low);
    if (isfinite(high)) clip_histogram_snap(&h, high);
    return h;
}

/* The thresholds of log rho that a loss removes the gradient beyond; an infinite one if it has none. */
static inline void clip_histogram_thresholds(const PolicyLossConfig *c, double *low, double *high) {
    const bool gmpo = c->loss == POLICY_GMPO, cispo = c->loss == POLICY_CISPO;
    *low = -INFINITY;
    *high = INFINITY;
    if (c->loss == POLICY_DPPO || c->loss == POLICY_KL_COV) return;
    *low = gmpo ? -c->epsilon : cispo || c->epsilon >= 1 ? -INFINITY : log1p(-c->epsilon);
    *high = gmpo ? c->epsilon_high : cispo ? log(c->epsilon_high) : log1p(c->epsilon_high);
}

/* Sets the sizes of the rows to the quartiles of the absolute values of n advantages, without zeros. */
static inline void clip_histogram_sizes(ClipHistogram *h, const float *advantage, int64_t n) {
    float *sorted = (float *)xmalloc((size_t)n * sizeof *sorted);
    size_t count = 0;
    for (int64_t i = 0; i < n; i++)
        if (advantage[i] != 0 && isfinite(advantage[i])) sorted[count++] = fabsf(advantage[i]);
    qsort(sorted, count, sizeof *sorted, policy_compare_floats);
    for (int q = 0; q < 3; q++) h->size[q] = count ? (double)sorted[(size_t)(q + 1) * (count - 1) / 4] : 0;
    free(sorted);
}

/* The bin of log rho. A value at a threshold is on its inner side, as the comparisons of the metric are strict. */
static inline int clip_histogram_bin(const ClipHistogram *h, double log_rho) {
    int bin = 0;
    while (bin < CLIP_BINS - 1 && (h->edge[bin] > 0 ? log_rho > h->edge[bin] : log_rho >= h->edge[bin])) bin++;
    return bin;
}

/* Counts one token, or one completion. */
static inline void clip_histogram_add(ClipHistogram *h, double log_rho, double advantage) {
    const int bin = clip_histogram_bin(h, log_rho);
    int size = 0;
    if (!(advantage < 0) && !(advantage > 0)) {
        h->sum.zero[bin]++;
        return;
    }
    while (size < 3 && fabs(advantage) > h->size[size]) size++;
    h->sum.count[advantage > 0 ? CLIP_ROWS / 2 + size : CLIP_ROWS / 2 - 1 - size][bin]++;
}

/* Counts the tokens of a micro-batch, or its completions if rho is per completion; not those of another policy. */
static inline void clip_histogram_policy(ClipHistogram *h, const PolicyLossConfig *c, const PolicyBatch *b) {
    const bool by_sequence = policy_by_sequence(c) && c->loss != POLICY_GMPO;
    for (int32_t i = 0; i < b->completions; i++) {
        double share;
        if ((b->counts && !b->counts[i]) || (b->off_policy && b->off_policy[i])) continue;
        if (by_sequence) {
            clip_histogram_add(h, log(policy_sequence_ratio(c, b, i, &share)), (double)b->advantage[i]);
            continue;
        }
        for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++)
            clip_histogram_add(h, policy_log_ratio(b, t), policy_token_advantage(b, i, t));
    }
}

/* The share of all counts that have no gradient with these thresholds, which must be edges. */
static inline double clip_histogram_share(const ClipHistogram *h, double low, double high) {
    double clipped = 0, all = 0;
    for (int bin = 0; bin < CLIP_BINS; bin++) {
        const double from = bin ? h->edge[bin - 1] : -INFINITY, to = bin < CLIP_BINS - 1 ? h->edge[bin] : INFINITY;
        all += h->sum.zero[bin];
        for (int row = 0; row < CLIP_ROWS; row++) {
            all += h->sum.count[row][bin];
            if (row < CLIP_ROWS / 2 ? to <= low : from >= high) clipped += h->sum.count[row][bin];
        }
    }
    return all > 0 ? clipped / all : 0;
}

#endif
