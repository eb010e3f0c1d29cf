/* device.h - fixtures for tests of the backend's operations: device memory, host memory and comparison.
 *
 * Device memory is padded with NaN, ends in a canary and is freed after each test; host memory is freed too. Tolerances
 * are derived: a float32 sum of n terms in any order is off by at most about n u sum|term|, u = 2^-24 (Higham, Accuracy
 * and Stability of Numerical Algorithms, 3.1), so references record the sum of the absolute terms. */
#ifndef TESTS_DEVICE_H
#define TESTS_DEVICE_H

#include "../llmc/base/error.h"    /* Error */
#include "../llmc/base/random.h"   /* Random, random_normal */
#include "../llmc/model/backend.h" /* ROW_ALIGN, Weights, Acts, Floats, ... */
#include "arrays.h"                /* FLOATS, Sum, sum_add, arrays_free, ... */
#include "cpu_device.h"            /* B, D */

static const double U = 0x1p-24;

/* ==== Memory that is checked and freed after each test ==== */

enum { HELD = 1000, CANARY = 16 };
static struct {
    void *device;
    size_t n;
    bool weights;
} held[HELD];
static int held_count;

/* Allocates n 4-byte words on the device: the first `given` come from x, the others are NaN. */
static inline void *device_words(const void *x, size_t given, size_t n, bool weights) {
    Error e;
    float *words = FLOATS(n + CANARY);
    for (size_t i = 0; i < n + CANARY; i++) words[i] = i < n ? NAN : 12345.0f;
    if (x) memcpy(words, x, given * 4);
    void *memory = B->alloc(D, (n + CANARY) * 4, "a test", &e);
    assert_non_null(memory);
    assert_int_equal((uintptr_t)memory % 64, 0);
    B->upload(D, memory, words, (n + CANARY) * 4);
    assert_true(held_count < HELD);
    held[held_count].device = memory;
    held[held_count].n = n;
    held[held_count++].weights = weights;
    return memory;
}

static inline size_t padded(int rows, int columns) {
    return (size_t)(rows + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN * (size_t)columns;
}

/* x NULL: NaN everywhere. */
static inline Acts *acts(const float *x, int rows, int columns) {
    return device_words(x, (size_t)rows * (size_t)columns, padded(rows, columns), false);
}
static inline Floats *floats(const float *x, size_t n) { return device_words(x, n, n, false); }
static inline Ints *ints(const int32_t *x, size_t n) { return device_words(x, n, n, false); }
static inline Weights *weights(const float *x, size_t n) {
    Weights *w = device_words(NULL, 0, n, true);
    B->weights_upload(D, w, x, n);
    return w;
}

static inline float *fetch(const void *device, size_t n) {
    float *x = FLOATS(n);
    B->download(D, x, device, n * sizeof *x);
    return x;
}

static inline int check_memory(void **state) {
    (void)state;
    Error e;
    const float canary = 12345.0f;
    int broken = 0;
    if (!B->sync(D, &e)) {
        print_error("%s\n", e.text);
        broken = 1;
    }
    for (int i = 0; i < held_count; i++) {
        float end[CANARY];
        B->download(D, end, (char *)held[i].device + held[i].n * 4, sizeof end);
        for (int k = 0; k < CANARY; k++) broken |= end[k] != canary;
        if (held[i].weights) B->weights_release(D, held[i].device, held[i].n);
        else B->release(D, held[i].device);
    }
    arrays_free();
    held_count = 0;
    return broken;
}

static inline float *noise(Random *r, size_t n, double amplitude) {
    float *x = FLOATS(n);
    for (size_t i = 0; i < n; i++) x[i] = (float)(amplitude * random_normal(r));
    return x;
}

/* ==== Comparison ==== */

/* Checks |got - want| <= slack * u * size for each of n values. size NULL: |want|. */
static inline void check(const char *what, const float *got, const double *want, const double *size, double slack,
                         size_t n) {
    for (size_t i = 0; i < n; i++) {
        const double allowed = slack * U * (size ? size[i] : fabs(want[i])) + 1e-37;
        if (!(fabs(got[i] - want[i]) <= allowed))
            fail_msg("%s[%zu] is %.9g, expected %.9g within %.2g", what, i, got[i], want[i], allowed);
    }
}

static inline void sum_check(const char *what, const float *got, Sum s, double terms, size_t n) {
    check(what, got, s.value, s.size, terms + 8, n);
}

/* Rounds to the nearest bfloat16 (8 bits of significand, ties to even), with frexp instead of bit operations. */
static inline double bf16(double x) {
    int exponent;
    const double m = frexp(x, &exponent);
    return ldexp(nearbyint(m * 256), exponent - 8);
}
static inline double same(double x) { return x; }

static inline Sum linear_reference(const float *x, const float *w, const float *b, int N, int IC, int OC,
                                   double (*round)(double)) {
    Sum s = sums((size_t)(N * OC), NULL);
    for (int i = 0; i < N; i++)
        for (int o = 0; o < OC; o++) {
            for (int k = 0; k < IC; k++) sum_add(s, (size_t)(i * OC + o), round(x[i * IC + k]) * round(w[o * IC + k]));
            if (b) sum_add(s, (size_t)(i * OC + o), b[o]);
        }
    return s;
}

#define TEST(name) cmocka_unit_test_teardown(name, check_memory)

#endif
