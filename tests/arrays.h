/* arrays.h - host arrays freed after each test, and sums that record the magnitude of their terms.
 *
 * Tests of the backends' operations use them for reference values.
 *
 *     float *x = FLOATS(n);                        // zero-filled; freed by arrays_free(), which a teardown calls
 *     Sum s = sums(n, NULL);
 *     sum_add(s, i, term);                         // s.size[i]: sum |terms|, the scale of rounding errors
 */
#ifndef TESTS_ARRAYS_H
#define TESTS_ARRAYS_H

#include "../llmc/base/error.h"  /* xcalloc */
#include "../llmc/base/random.h" /* Random, random_below */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

enum { KEPT = 4000 };
static void *kept[KEPT];
static int kept_count;

static inline void *host(size_t n, size_t size) {
    assert_true(kept_count < KEPT);
    return kept[kept_count++] = xcalloc(n, size);
}
#define FLOATS(n)  ((float *)host(n, sizeof(float)))
#define DOUBLES(n) ((double *)host(n, sizeof(double)))
#define INTS(n)    ((int32_t *)host(n, sizeof(int32_t)))

static inline void arrays_free(void) {
    for (int i = 0; i < kept_count; i++) free(kept[i]);
    kept_count = 0;
}

static inline int32_t *picks(Random *r, size_t n, int below) {
    int32_t *x = INTS(n);
    for (size_t i = 0; i < n; i++) x[i] = (int32_t)random_below(r, (uint64_t)below);
    return x;
}

typedef struct Sum {
    double *value, *size; /* the sum, and the sum of |terms| */
} Sum;

static inline Sum sums(size_t n, const float *start) {
    Sum s = {DOUBLES(n), DOUBLES(n)};
    if (start)
        for (size_t i = 0; i < n; i++) {
            s.value[i] = start[i];
            s.size[i] = fabs(start[i]);
        }
    return s;
}
static inline void sum_add(Sum s, size_t i, double term) {
    s.value[i] += term;
    s.size[i] += fabs(term);
}

/* out += x w^T + b and dx += dout w: x (N, K), w (M, K), dout (N, M). */
static inline void sum_linear(Sum out, Sum dx, const float *x, const float *w, const float *b, const float *dout, int N,
                              int K, int M) {
    for (int i = 0; i < N; i++)
        for (int o = 0; o < M; o++) {
            sum_add(out, (size_t)(i * M + o), b[o]);
            for (int k = 0; k < K; k++) {
                sum_add(out, (size_t)(i * M + o), (double)x[i * K + k] * w[o * K + k]);
                sum_add(dx, (size_t)(i * K + k), (double)dout[i * M + o] * w[o * K + k]);
            }
        }
}

#endif
