/* Every operation of the table in backend.h against loops in float64 written from the formula.
 *
 * Tolerances are derived: a float32 sum of n terms in any order is off by at most about n u sum|term|, u = 2^-24 (Higham,
 * Accuracy and Stability of Numerical Algorithms, 3.1), and each reference carries that size along. Buffers are padded
 * to ROW_ALIGN rows with NaN, which must not leak into results, and end in a canary.
 *
 * Operations here that hold no matrix product are checked to give the same bits with one thread and with two. Those that
 * do (linear_*, head, logits, sample) leave the order of sums to the library: they are checked to agree within tolerance.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/cpu.h"

/* A new operation changes the size: write its test, then this number. The table is a name, two sizes, 37 operations. */
_Static_assert(sizeof(Backend) == (3 + 37) * sizeof(void *), "backend.h has an operation that this file does not test");

static const double U = 0x1p-24;
static const Backend *B;
static Device *D;

/* ==== Memory that is checked and freed after each test ==== */

enum { HELD = 1000, CANARY = 16 };
static struct {
    void *device;
    size_t n;
    bool weights;
} held[HELD];
static void *kept[HELD];
static int held_count, kept_count;

static void *host(size_t n, size_t size) {
    assert_true(kept_count < HELD);
    return kept[kept_count++] = xcalloc(n, size);
}
#define FLOATS(n)  ((float *)host(n, sizeof(float)))
#define DOUBLES(n) ((double *)host(n, sizeof(double)))
#define INTS(n)    ((int32_t *)host(n, sizeof(int32_t)))

/* n 4-byte words on the device, the first `given` from x, the others NaN. */
static void *device_words(const void *x, size_t given, size_t n, bool weights) {
    Error e;
    float *words = FLOATS(n + CANARY);
    for (size_t i = 0; i < n + CANARY; i++) words[i] = i < n ? NAN : 12345.0f;
    if (x) memcpy(words, x, given * 4);
    void *memory = B->alloc(D, (n + CANARY) * 4, "a test", &e);
    assert_non_null(memory);
    assert_int_equal((uintptr_t)memory % 64, 0);
    B->upload(D, memory, words, (n + CANARY) * 4);
    assert_true(held_count < HELD);
    held[held_count].device = memory, held[held_count].n = n, held[held_count++].weights = weights;
    return memory;
}

static size_t padded(int rows, int columns) {
    return (size_t)(rows + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN * (size_t)columns;
}

/* x NULL: NaN everywhere. */
static Acts *acts(const float *x, int rows, int columns) {
    return device_words(x, (size_t)rows * (size_t)columns, padded(rows, columns), false);
}
static Floats *floats(const float *x, size_t n) { return device_words(x, n, n, false); }
static Ints *ints(const int32_t *x, size_t n) { return device_words(x, n, n, false); }
static Weights *weights(const float *x, size_t n) {
    Weights *w = device_words(NULL, 0, n, true);
    B->weights_upload(D, w, x, n);
    return w;
}

static float *fetch(const void *device, size_t n) {
    float *x = FLOATS(n);
    B->download(D, x, device, n * sizeof *x);
    return x;
}

static int check_memory(void **state) {
    (void)state;
    Error e;
    const float canary = 12345.0f;
    int broken = 0;
    if (!B->sync(D, &e)) print_error("%s\n", e.text), broken = 1;
    for (int i = 0; i < held_count; i++) {
        float end[CANARY];
        B->download(D, end, (char *)held[i].device + held[i].n * 4, sizeof end);
        for (int k = 0; k < CANARY; k++) broken |= end[k] != canary;
        if (held[i].weights) B->weights_release(D, held[i].device, held[i].n);
        else B->release(D, held[i].device);
    }
    for (int i = 0; i < kept_count; i++) free(kept[i]);
    held_count = kept_count = 0;
    return broken;
}

static float *noise(Random *r, size_t n, double amplitude) {
    float *x = FLOATS(n);
    for (size_t i = 0; i < n; i++) x[i] = (float)(amplitude * random_normal(r));
    return x;
}

static int32_t *picks(Random *r, size_t n, int below) {
    int32_t *x = INTS(n);
    for (size_t i = 0; i < n; i++) x[i] = (int32_t)random_below(r, (uint64_t)below);
    return x;
}

/* ==== Comparison ==== */

/* |got - want| <= slack * u * size, for each of n; size NULL: |want|. */
static void check(const char *what, const float *got, const double *want, const double *size, double slack, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const double allowed = slack * U * (size ? size[i] : fabs(want[i])) + 1e-37;
        if (!(fabs(got[i] - want[i]) <= allowed))
            fail_msg("%s[%zu] is %.9g, expected %.9g within %.2g", what, i, got[i], want[i], allowed);
    }
}

typedef struct Sum {
    double *value, *size; /* the sum, and the sum of |terms| */
} Sum;

static Sum sums(size_t n, const float *start) {
    Sum s = {DOUBLES(n), DOUBLES(n)};
    for (size_t i = 0; start && i < n; i++) s.value[i] = start[i], s.size[i] = fabs(start[i]);
    return s;
}
static void sum_add(Sum s, size_t i, double term) { s.value[i] += term, s.size[i] += fabs(term); }
static void sum_check(const char *what, const float *got, Sum s, double terms, size_t n) {
    check(what, got, s.value, s.size, terms + 8, n);
}

/* ==== The device ==== */

static void test_table(void **state) {
    (void)state;
    const void *entries[sizeof(Backend) / sizeof(void *)];
    memcpy(entries, B, sizeof entries);
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) assert_non_null(entries[i]);
    assert_string_equal(B->name, "cpu");
    assert_true(B->weight_size == 4 && B->act_size == 4);
    assert_true(weights_at(B, (Weights *)64, 3) == (Weights *)(64 + 3 * B->weight_size));
    assert_true(acts_at(B, (Acts *)64, 3) == (Acts *)(64 + 3 * B->act_size));
    assert_true(floats_at((Floats *)64, 3) == (Floats *)76 && ints_at((Ints *)64, 3) == (Ints *)76);
}

static void test_memory(void **state) {
    (void)state;
    Error e;
    Random r = random_start(1, 0);
    enum { N = 3000001 }; /* several parts of zero() and one byte more */
    float *x = noise(&r, N, 1);
    Weights *w = weights(x, N);
    float *back = FLOATS(N);
    B->weights_download(D, back, w, N);
    assert_memory_equal(back, x, N * sizeof *x);
    Floats *f = floats(x, N);
    B->zero(D, f, (N - 2) * sizeof *x);
    back = fetch(f, N);
    for (int i = 0; i < N - 2; i++) assert_true(back[i] == 0);
    assert_true(back[N - 2] == x[N - 2] && back[N - 1] == x[N - 1]);
    B->zero(D, f, 0);
    B->upload(D, f, x, 0);
    assert_null(B->alloc(D, SIZE_MAX / 2, "the moon", &e));
    assert_non_null(strstr(e.text, "the moon"));
    assert_non_null(strstr(e.text, "9223372036854775807"));
    assert_null(B->alloc(D, SIZE_MAX, "the moon", &e));
    void *nothing = B->alloc(D, 0, "nothing", &e);
    assert_non_null(nothing);
    B->release(D, nothing);
    assert_true(B->sync(D, &e));
}

/* A failure is sticky and comes out of sync(). */
static void test_failure(void **state) {
    (void)state;
    Error e = {""};
    Device *broken;
    assert_true(B->open(&broken, DTYPE_FLOAT32, &e));
    float x[16 * 16] = {0};
    B->linear_forward(broken, (Acts *)x, (Acts *)x, (Weights *)x, NULL, 16, -1, 8);
    assert_false(B->sync(broken, &e));
    assert_non_null(strstr(e.text, "cpu: oneDNN "));
    B->linear_forward(broken, (Acts *)x, (Acts *)x, (Weights *)x, NULL, 16, 4, 4);
    assert_false(B->sync(broken, &e));
    B->close(broken);
}

static void test_peak(void **state) {
    (void)state;
    const size_t before = B->scratch_bytes(D);
    const double peak = B->gemm_peak(D);
    assert_true(peak > 1e8 && peak < 1e16);
    assert_true(B->scratch_bytes(D) == before);
}

/* What packed weights and scratch take is counted, predicted, and given back with the weights. */
static void test_scratch(void **state) {
    (void)state;
    Error e;
    Random r = random_start(1, 1);
    enum { N = 64, C = 64, V = 1000, VP = 1024 };
    for (int dtype = 0; dtype < 2; dtype++) {
        Device *d;
        if (!B->open(&d, (Dtype)dtype, &e)) continue;
        assert_int_equal(B->scratch_bytes(d), 0);
        Weights *wte = B->alloc(d, VP * C * 4, "wte", &e), *w = B->alloc(d, C * C * 4, "w", &e);
        B->weights_upload(d, wte, noise(&r, VP * C, 1), VP * C), B->weights_upload(d, w, noise(&r, C * C, 1), C * C);
        Acts *x = acts(noise(&r, N * C, 1), N, C), *y = acts(NULL, N, C);
        Floats *logp = floats(NULL, N), *dlogp = floats(noise(&r, N, 1), N);
        Floats *dwte = floats(FLOATS(VP * C), VP * C), *dw = floats(FLOATS(C * C), C * C);
        Ints *target = ints(picks(&r, N, V), N);
        B->linear_forward(d, y, x, w, NULL, N, C, C);
        B->linear_backward(d, y, dw, NULL, x, x, w, N, C, C);
        const Head h = {.rows = N,
                        .channels = C,
                        .vocab = V,
                        .padded_vocab = VP,
                        .temperature = 1,
                        .h = x,
                        .wte = wte,
                        .target = target,
                        .logp = logp,
                        .dlogp = dlogp,
                        .dh = y,
                        .dwte = dwte};
        B->head(d, &h);
        const size_t used = B->scratch_bytes(d), predicted = B->scratch_predict(d, VP * C + C * C, N, C, VP);
        if (!(used <= predicted && used * 2 >= predicted)) fail_msg("%zu bytes, %zu were predicted", used, predicted);
        B->linear_forward(d, y, x, w, NULL, N, C, C);
        assert_int_equal(B->scratch_bytes(d), used); /* nothing is allocated in a second step */
        B->weights_release(d, wte, VP * C), B->weights_release(d, w, C * C);
        assert_true(B->scratch_bytes(d) + (VP * C + C * C) * (dtype ? 2 : 4) <= used);
        assert_true(B->sync(d, &e));
        B->close(d);
    }
}

/* ==== Embedding, noise, rows ==== */

static void test_embed(void **state) {
    (void)state;
    Random r = random_start(2, 0);
    static const int shape[][4] = {/* N, C, V, T */ {1, 24, 5, 3}, {37, 24, 9, 7}, {50, 130, 257, 16}, {8, 1, 3, 3}};
    for (int s = 0; s < 4; s++) {
        const int N = shape[s][0], C = shape[s][1], V = shape[s][2], T = shape[s][3];
        const float *wte = noise(&r, (size_t)(V * C), 1), *wpe = noise(&r, (size_t)(T * C), 1);
        const int32_t *token = picks(&r, (size_t)N, V), *position = picks(&r, (size_t)N, T);
        Acts *out = acts(NULL, N, C);
        Ints *dt = ints(token, (size_t)N), *dp = ints(position, (size_t)N);
        B->embed_forward(D, out, weights(wte, (size_t)(V * C)), weights(wpe, (size_t)(T * C)), dt, dp, N, C);
        const float *got = fetch(out, (size_t)(N * C));
        for (int i = 0; i < N; i++)
            for (int c = 0; c < C; c++) assert_true(got[i * C + c] == wte[token[i] * C + c] + wpe[position[i] * C + c]);
        const float *dout = noise(&r, (size_t)(N * C), 1);
        const float *t0 = noise(&r, (size_t)(V * C), 1), *p0 = noise(&r, (size_t)(T * C), 1);
        Floats *dwte = floats(t0, (size_t)(V * C)), *dwpe = floats(p0, (size_t)(T * C));
        Acts *dd = acts(dout, N, C);
        Sum wt = sums((size_t)(V * C), t0), wp = sums((size_t)(T * C), p0);
        for (int twice = 0; twice < 2; twice++) {
            B->embed_backward(D, dwte, dwpe, dd, dt, dp, N, C);
            for (int i = 0; i < N; i++)
                for (int c = 0; c < C; c++) {
                    sum_add(wt, (size_t)(token[i] * C + c), dout[i * C + c]);
                    sum_add(wp, (size_t)(position[i] * C + c), dout[i * C + c]);
                }
            sum_check("dwte", fetch(dwte, (size_t)(V * C)), wt, 2 * N, (size_t)(V * C));
            sum_check("dwpe", fetch(dwpe, (size_t)(T * C)), wp, 2 * N, (size_t)(T * C));
        }
    }
}

/* x += scale u, u uniform in (-1, 1): range, moments, one draw an element, nothing but (seed, stream, place) in it. */
static void test_noise(void **state) {
    (void)state;
    enum { N = 300, C = 77 };
    Random r = random_start(3, 0);
    float *x = FLOATS(N * C), *scale = FLOATS(N);
    for (int i = 0; i < N; i++) scale[i] = i % 5 ? 0.25f * (float)(i % 5) : 0;
    Acts *device = acts(x, N, C), *other = acts(x, N, C), *few = acts(x, 10, C);
    Floats *s = floats(scale, N);
    B->noise_add(D, device, s, N, C, 42, RANDOM_NOISE + 7);
    const float *got = fetch(device, N * C);
    double sum = 0, squares = 0, product = 0;
    int n = 0;
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++) {
            const float y = got[i * C + c];
            if (scale[i] == 0) assert_true(y == 0);
            else {
                const double u = y / scale[i];
                assert_true(fabs(u) <= 1);
                assert_true(fabs(u - (2 * (double)random_uniform(42, RANDOM_NOISE + 7, (uint64_t)(i * C + c)) - 1)) <
                            1e-6);
                sum += u, squares += u * u, n++;
                if (c) product += u * (got[i * C + c - 1] / scale[i]);
            }
        }
    assert_true(fabs(sum / n) < 5 / sqrt(3.0 * n));
    assert_true(fabs(squares / n - 1 / 3.0) < 5 * sqrt(4 / 45.0 / n));
    assert_true(fabs(product / n) < 5 / 3.0 / sqrt(n));
    B->noise_add(D, few, s, 10, C, 42, RANDOM_NOISE + 7); /* the first rows of a longer batch */
    assert_memory_equal(fetch(few, 10 * C), got, 10 * C * sizeof *got);
    B->noise_add(D, other, s, N, C, 42, RANDOM_NOISE + 8);
    assert_memory_not_equal(fetch(other, N * C), got, N * C * sizeof *got);
    const float *start = noise(&r, C, 1); /* it adds */
    Acts *one = acts(start, 1, C);
    B->noise_add(D, one, s, 1, C, 1, 1); /* at scale 0 */
    assert_memory_equal(fetch(one, C), start, C * sizeof *start);
}

static void test_rows(void **state) {
    (void)state;
    Random r = random_start(4, 0);
    enum { N = 23, R = 41, C = 29 };
    const float *x = noise(&r, N * C, 1), *in = noise(&r, R * C, 1);
    const int32_t *row = picks(&r, R, N); /* some rows several times, some never */
    Acts *dx = acts(x, N, C), *out = acts(NULL, R, C);
    Ints *drow = ints(row, R);
    B->gather_rows(D, out, dx, drow, R, C);
    const float *got = fetch(out, R * C);
    for (int i = 0; i < R; i++) assert_memory_equal(got + i * C, x + row[i] * C, C * sizeof *x);
    float *want = FLOATS(N * C);
    memcpy(want, x, N * C * sizeof *x);
    for (int i = 0; i < R; i++)
        for (int c = 0; c < C; c++) want[row[i] * C + c] += in[i * C + c]; /* in the order of r: the same bits */
    B->scatter_rows(D, dx, acts(in, R, C), drow, R, C);
    assert_memory_equal(fetch(dx, N * C), want, N * C * sizeof *x);
    B->gather_rows(D, out, dx, drow, 0, C);
    B->scatter_rows(D, dx, out, drow, 0, C);
    assert_memory_equal(fetch(dx, N * C), want, N * C * sizeof *x);
}

/* ==== Layernorm ==== */

typedef struct Norm {
    double *mean, *rstd, *n, *amplify; /* amplify: by what an element's rounding counts in n */
} Norm;

static Norm norm_reference(const float *x, int N, int C) {
    Norm r = {DOUBLES((size_t)N), DOUBLES((size_t)N), DOUBLES((size_t)(N * C)), DOUBLES((size_t)N)};
    for (int i = 0; i < N; i++) {
        double sum = 0, variance = 0, size = 0;
        for (int c = 0; c < C; c++) sum += x[i * C + c], size += fabs(x[i * C + c]) / C;
        r.mean[i] = sum / C;
        for (int c = 0; c < C; c++) variance += pow(x[i * C + c] - r.mean[i], 2) / C;
        r.rstd[i] = 1 / sqrt(variance + 1e-5);
        for (int c = 0; c < C; c++) r.n[i * C + c] = (x[i * C + c] - r.mean[i]) * r.rstd[i];
        r.amplify[i] = size * r.rstd[i];
    }
    return r;
}

static void check_norm(const float *x, Acts *out, Floats *mean, Floats *rstd, const float *w, const float *b, int N,
                       int C) {
    const Norm r = norm_reference(x, N, C);
    double *want = DOUBLES((size_t)(N * C)), *size = DOUBLES((size_t)(N * C)), *one = DOUBLES((size_t)N);
    for (int i = 0; i < N; i++) {
        one[i] = r.amplify[i] / r.rstd[i];
        for (int c = 0; c < C; c++) {
            const int at = i * C + c;
            want[at] = r.n[at] * w[c] + b[c];
            size[at] = (r.amplify[i] + 2 * fabs(r.n[at])) * fabs(w[c]) + fabs(b[c]);
        }
    }
    check("layernorm", fetch(out, (size_t)(N * C)), want, size, C + 8, (size_t)(N * C));
    check("mean", fetch(mean, (size_t)N), r.mean, one, C + 8, (size_t)N);
    for (int i = 0; i < N; i++) one[i] = r.rstd[i] * (1 + r.amplify[i]);
    check("rstd", fetch(rstd, (size_t)N), r.rstd, one, C + 8, (size_t)N);
}

static const int norm_shape[][2] = {/* N, C */ {1, 24}, {17, 24}, {100, 33}, {3, 1}, {40, 200}, {2, 768}};
enum { NORM_SHAPES = sizeof norm_shape / sizeof *norm_shape };

static void test_layernorm_forward(void **state) {
    (void)state;
    Random r = random_start(5, 0);
    for (int s = 0; s < NORM_SHAPES; s++)
        for (int kind = 0; kind < 3; kind++) { /* usual; far from 0; of no spread, where eps decides */
            const int N = norm_shape[s][0], C = norm_shape[s][1];
            float *x = noise(&r, (size_t)(N * C), kind == 2 ? 1e-5 : 1), *delta = noise(&r, (size_t)(N * C), 1);
            for (int i = 0; i < N * C; i++) x[i] += kind == 1 ? 50.0f : 0, delta[i] *= kind == 2 ? 1e-5f : 1;
            const float *w = noise(&r, (size_t)C, 1), *b = noise(&r, (size_t)C, 1);
            Weights *dw = weights(w, (size_t)C), *db = weights(b, (size_t)C);
            Acts *dx = acts(x, N, C), *dd = acts(delta, N, C), *out = acts(NULL, N, C), *sum = acts(NULL, N, C);
            Floats *mean = floats(NULL, (size_t)N), *rstd = floats(NULL, (size_t)N);
            B->layernorm_forward(D, out, mean, rstd, dx, dw, db, N, C);
            check_norm(x, out, mean, rstd, w, b, N, C);
            B->residual_layernorm_forward(D, sum, out, mean, rstd, dx, dd, dw, db, N, C);
            for (int i = 0; i < N * C; i++) delta[i] = x[i] + delta[i];
            assert_memory_equal(fetch(sum, (size_t)(N * C)), delta, (size_t)(N * C) * sizeof *x);
            check_norm(delta, out, mean, rstd, w, b, N, C);
            assert_memory_equal(fetch(dx, (size_t)(N * C)), x, (size_t)(N * C) * sizeof *x);
            const float *apart = fetch(out, (size_t)(N * C));
            B->residual_layernorm_forward(D, dx, out, mean, rstd, dx, dd, dw, db, N, C); /* in place */
            assert_memory_equal(fetch(dx, (size_t)(N * C)), delta, (size_t)(N * C) * sizeof *x);
            assert_memory_equal(fetch(out, (size_t)(N * C)), apart, (size_t)(N * C) * sizeof *x);
        }
}

/* The derivative of n_c = (x_c - mean) rstd by the chain rule, term by term:
 *   dn_k/dx_c = rstd (1{k=c} - 1/C - n_k n_c / C) */
static void test_layernorm_backward(void **state) {
    (void)state;
    Random r = random_start(6, 0);
    for (int s = 0; s < NORM_SHAPES; s++) {
        const int N = norm_shape[s][0], C = norm_shape[s][1];
        const size_t n = (size_t)(N * C);
        const float *x = noise(&r, n, 2), *dout = noise(&r, n, 1), *w = noise(&r, (size_t)C, 1);
        const float *x0 = noise(&r, n, 1), *w0 = noise(&r, (size_t)C, 1), *b0 = noise(&r, (size_t)C, 1);
        Weights *weight = weights(w, (size_t)C);
        Acts *act = acts(x, N, C), *grad = acts(dout, N, C), *dx = acts(x0, N, C), *out = acts(NULL, N, C);
        Floats *mean = floats(NULL, (size_t)N), *rstd = floats(NULL, (size_t)N);
        Floats *dw = floats(w0, (size_t)C), *db = floats(b0, (size_t)C);
        B->layernorm_forward(D, out, mean, rstd, act, weight, weight, N, C);
        const Norm ref = norm_reference(x, N, C);
        Sum sx = sums(n, x0), sw = sums((size_t)C, w0), sb = sums((size_t)C, b0);
        for (int twice = 0; twice < 2; twice++) {
            B->layernorm_backward(D, dx, dw, db, grad, act, mean, rstd, weight, N, C);
            for (int i = 0; i < N; i++) {
                double g_mean = 0, gn_mean = 0, g_size = 0;
                for (int c = 0; c < C; c++) {
                    const double g = (double)dout[i * C + c] * w[c];
                    g_mean += g / C, gn_mean += g * ref.n[i * C + c] / C, g_size += fabs(g) / C;
                    sum_add(sw, (size_t)c, dout[i * C + c] * ref.n[i * C + c]);
                    sw.size[c] += fabs(dout[i * C + c]) * ref.amplify[i];
                    sum_add(sb, (size_t)c, dout[i * C + c]);
                }
                for (int c = 0; c < C; c++) {
                    const size_t at = (size_t)(i * C + c);
                    sum_add(sx, at, ref.rstd[i] * ((double)dout[at] * w[c] - g_mean - ref.n[at] * gn_mean));
                    sx.size[at] += ref.rstd[i] * g_size * (1 + fabs(ref.n[at])) * (2 + 2 * ref.amplify[i]);
                }
            }
            sum_check("dx", fetch(dx, n), sx, 2 * C, n);
            sum_check("dw", fetch(dw, (size_t)C), sw, 2 * N + C, (size_t)C);
            sum_check("db", fetch(db, (size_t)C), sb, 2 * N, (size_t)C);
        }
    }
}

/* ==== Linear ==== */

static const int linear_shape[][3] = {/* N, IC, OC */ {1, 24, 72},
                                      {5, 24, 17},
                                      {16, 32, 32},
                                      {33, 64, 100},
                                      {17, 1, 1},
                                      {1, 1, 257},
                                      {31, 257, 3},
                                      {130, 48, 192},
                                      {2, 100, 1}};
enum { LINEAR_SHAPES = sizeof linear_shape / sizeof *linear_shape };

/* The nearest bfloat16: 8 bits of significand, ties to even. Written with frexp, not with bits. */
static double bf16(double x) {
    int exponent;
    const double m = frexp(x, &exponent);
    return ldexp(nearbyint(m * 256), exponent - 8);
}
static double same(double x) { return x; }

static Sum linear_reference(const float *x, const float *w, const float *b, int N, int IC, int OC,
                            double (*round)(double)) {
    Sum s = sums((size_t)(N * OC), NULL);
    for (int i = 0; i < N; i++)
        for (int o = 0; o < OC; o++) {
            for (int k = 0; k < IC; k++) sum_add(s, (size_t)(i * OC + o), round(x[i * IC + k]) * round(w[o * IC + k]));
            if (b) sum_add(s, (size_t)(i * OC + o), b[o]);
        }
    return s;
}

/* gelu(x) = x/2 (1 + tanh u), with (1 + tanh u) / 2 = 1 / (1 + e^-2u), which does not cancel */
static double gelu_u(double x) { return sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); }
static double gelu(double x) { return x / (1 + exp(-2 * gelu_u(x))); }
static double gelu_slope(double x) {
    const double s = 1 / (1 + exp(-2 * gelu_u(x))), t = 1 / (1 + exp(2 * gelu_u(x)));
    return s + 2 * x * s * t * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}
/* The relative error of e^y is that of y, times y. */
static double gelu_size(double x) { return fabs(gelu(x)) * (1 + 2 * fabs(gelu_u(x))); }

static void check_linear(Device *d, double (*round)(double)) {
    Random r = random_start(7, 0);
    for (int s = 0; s < LINEAR_SHAPES; s++) {
        const int N = linear_shape[s][0], IC = linear_shape[s][1], OC = linear_shape[s][2];
        const size_t in = (size_t)(N * IC), out = (size_t)(N * OC), size = (size_t)(IC * OC);
        const float *x = noise(&r, in, 1), *w = noise(&r, size, 1), *b = noise(&r, (size_t)OC, 1);
        const float *dout = noise(&r, out, 1), *w0 = noise(&r, size, 1), *b0 = noise(&r, (size_t)OC, 1);
        Weights *dev_w = device_words(w, size, size, false), *dev_b = weights(b, (size_t)OC);
        Acts *dev_x = acts(x, N, IC), *y = acts(NULL, N, OC), *g = acts(NULL, N, OC), *dx = acts(NULL, N, IC);
        Acts *dev_dout = acts(dout, N, OC);
        B->linear_forward(d, y, dev_x, dev_w, NULL, N, IC, OC);
        sum_check("linear", fetch(y, out), linear_reference(x, w, NULL, N, IC, OC, round), IC, out);
        B->linear_forward(d, y, dev_x, dev_w, dev_b, N, IC, OC);
        const Sum ref = linear_reference(x, w, b, N, IC, OC, round);
        sum_check("linear + bias", fetch(y, out), ref, IC, out);
        y = acts(NULL, N, OC);
        B->linear_gelu_forward(d, y, g, dev_x, dev_w, dev_b, N, IC, OC);
        const float *pre = fetch(y, out);
        sum_check("linear + gelu, before it", pre, ref, IC, out);
        double *want = DOUBLES(out), *want_size = DOUBLES(out);
        for (size_t i = 0; i < out; i++) want[i] = gelu(pre[i]), want_size[i] = gelu_size(pre[i]);
        check("linear + gelu", fetch(g, out), want, want_size, 8, out);
        Floats *dw = floats(w0, size), *db = floats(b0, (size_t)OC);
        Sum sx = sums(in, NULL), sw = sums(size, w0), sb = sums((size_t)OC, b0);
        for (int i = 0; i < N; i++)
            for (int o = 0; o < OC; o++)
                for (int k = 0; k < IC; k++)
                    sum_add(sx, (size_t)(i * IC + k), round(dout[i * OC + o]) * round(w[o * IC + k]));
        for (int pass = 0; pass < 3; pass++) { /* once, again, and without what may be left out */
            B->linear_backward(d, pass < 2 ? dx : NULL, dw, pass < 2 ? db : NULL, dev_dout, dev_x, dev_w, N, IC, OC);
            for (int i = 0; i < N; i++)
                for (int o = 0; o < OC; o++) {
                    for (int k = 0; k < IC; k++)
                        sum_add(sw, (size_t)(o * IC + k), round(dout[i * OC + o]) * round(x[i * IC + k]));
                    if (pass < 2) sum_add(sb, (size_t)o, dout[i * OC + o]);
                }
            sum_check("dx", fetch(dx, in), sx, OC, in);
            sum_check("dw", fetch(dw, size), sw, 3 * N, size);
            sum_check("db", fetch(db, (size_t)OC), sb, 2 * N, (size_t)OC);
        }
        B->weights_upload(d, dev_w, w0, size); /* the packed copies must follow, forward and backward */
        B->linear_forward(d, y, dev_x, dev_w, dev_b, N, IC, OC);
        sum_check("new weights", fetch(y, out), linear_reference(x, w0, b, N, IC, OC, round), IC, out);
        B->linear_backward(d, dx, dw, NULL, dev_dout, dev_x, dev_w, N, IC, OC);
        Sum new_dx = sums(in, NULL);
        for (int i = 0; i < N; i++)
            for (int o = 0; o < OC; o++)
                for (int k = 0; k < IC; k++)
                    sum_add(new_dx, (size_t)(i * IC + k), round(dout[i * OC + o]) * round(w0[o * IC + k]));
        sum_check("dx, new weights", fetch(dx, in), new_dx, OC, in);
    }
}

static void test_linear(void **state) {
    (void)state;
    Device *d; /* its own: check_linear() leaves packed weights behind */
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    check_linear(d, same);
    assert_true(B->sync(d, &e));
    B->close(d);
}

static void test_linear_bf16(void **state) {
    (void)state;
    Device *d;
    Error e;
    if (!B->open(&d, DTYPE_BF16, &e)) {
        print_message("             skipped: %s\n", e.text);
        assert_non_null(strstr(e.text, "bf16"));
        skip();
    }
    check_linear(d, bf16);
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* bfloat16 operands: rounding to nearest even, NaN, infinity, numbers too small to be normal. */
static void test_bf16_operands(void **state) {
    (void)state;
    Device *d;
    Error e;
    if (!B->open(&d, DTYPE_BF16, &e)) skip();
    enum { N = 8 };
    const float x[N] = {1 + 0x1p-8f, 1 + 0x1.8p-7f, 1 + 0x1.1p-8f, -1 - 0x1p-8f, 0x1.ffp127f, NAN, -INFINITY, 3e-45f};
    const double want[N] = {1, 1 + 0x1p-6, 1 + 0x1p-7, -1, INFINITY, NAN, -INFINITY, 0};
    const float one = 1;
    Weights *w = device_words(&one, 1, 1, false);
    Acts *out = acts(NULL, N, 1);
    B->linear_forward(d, out, acts(x, N, 1), w, NULL, N, 1, 1);
    const float *got = fetch(out, N);
    for (int i = 0; i < N; i++) assert_true(isnan(want[i]) ? isnan(got[i]) : got[i] == want[i]);
    B->close(d);
}

static void test_gelu(void **state) {
    (void)state;
    enum { N = 40003 };
    Random r = random_start(8, 0);
    float *x = FLOATS(N);
    for (int i = 0; i < N; i++) x[i] = (float)((i - N / 2) * (12.0 / (N / 2)));
    static const float special[] = {0,    -0.0f, 1e-30f, -1e-30f, 1e-42f, 100,   -100,
                                    1e6f, -1e6f, 1e15f,  -1e15f,  1e20f,  -1e20f};
    memcpy(x, special, sizeof special);
    const float *grad = noise(&r, N, 1);
    Acts *pre = acts(x, N, 1), *out = acts(NULL, N, 1), *d = acts(grad, N, 1);
    B->gelu_forward(D, out, pre, N);
    B->gelu_backward(D, d, pre, N);
    double *y = DOUBLES(N), *slope = DOUBLES(N), *size = DOUBLES(N), *slope_size = DOUBLES(N);
    for (int i = 0; i < N; i++) {
        const bool far = fabs(x[i]) > 30; /* the result is x or 0 to the last bit */
        y[i] = far ? fmax(x[i], 0) : gelu(x[i]), slope[i] = grad[i] * (far ? x[i] > 0 : gelu_slope(x[i]));
        size[i] = far ? fabs(y[i]) : gelu_size(x[i]);
        slope_size[i] = fabs(grad[i]) * (1 + fmin(fabs(x[i]), 8) * (1 + fmin(fabs(gelu_u(x[i])), 10)));
    }
    check("gelu", fetch(out, N), y, size, 8, N);
    check("gelu'", fetch(d, N), slope, slope_size, 8, N);
    const float nan = NAN;
    Acts *one = acts(&nan, 1, 1);
    B->gelu_forward(D, out, one, 1);
    assert_true(isnan(fetch(out, 1)[0]));
}

/* The weights change under packed copies in every way that the table has; a part of a tensor too. */
static void test_stale_weights(void **state) {
    (void)state;
    Random r = random_start(9, 0);
    enum { N = 20, C = 16, M = 40 };
    for (int dtype = 0; dtype < 2; dtype++) {
        Device *d;
        Error e;
        if (!B->open(&d, (Dtype)dtype, &e)) continue;
        double (*round)(double) = dtype ? bf16 : same;
        float *w = noise(&r, C * M, 1);
        const float *x = noise(&r, N * C, 1);
        Weights *dev = B->alloc(d, C * M * 4, "weights", &e);
        B->weights_upload(d, dev, w, C * M);
        Acts *dev_x = acts(x, N, C), *y = acts(NULL, N, M);
        for (int change = 0; change < 6; change++) {
            if (change == 1) { /* the last rows only, as a file read in pieces may give them */
                for (int i = C * M / 2; i < C * M; i++) w[i] += 1;
                B->weights_upload(d, weights_at(B, dev, C * M / 2), w + C * M / 2, C * M / 2);
            } else if (change == 2) { /* the first */
                for (int i = 0; i < 5; i++) w[i] -= 1;
                B->weights_upload(d, dev, w, 5);
            } else if (change == 3 || change == 4) {
                const size_t from = change == 4 ? C : 0, n = C * M - from;
                float *grad = noise(&r, n, 1);
                const AdamW a = {.n = n,
                                 .lr = 0.5f,
                                 .beta1 = 0.9f,
                                 .beta2 = 0.99f,
                                 .eps = 1e-8f,
                                 .grad_scale = 1,
                                 .step = 1,
                                 .weights = weights_at(B, dev, from),
                                 .grad = floats(grad, n),
                                 .m = floats(FLOATS(n), n),
                                 .v = floats(FLOATS(n), n)};
                B->adamw(d, &a);
                B->weights_download(d, w, dev, C * M);
            } else if (change == 5) { /* other weights at the same address */
                B->weights_release(d, dev, C * M);
                dev = B->alloc(d, C * M * 4, "weights", &e);
                w = noise(&r, C * M, 1);
                B->weights_upload(d, dev, w, C * M);
            }
            B->linear_forward(d, y, dev_x, dev, NULL, N, C, M);
            sum_check("after the change", fetch(y, N * M), linear_reference(x, w, NULL, N, C, M, round), C, N * M);
        }
        B->weights_release(d, dev, C * M);
        B->close(d);
    }
}

/* More shapes than the device keeps plans for: it forgets them all and goes on. */
static void test_many_shapes(void **state) {
    (void)state;
    Random r = random_start(10, 0);
    enum { SIDE = 12 };
    const float *w = noise(&r, SIDE * SIDE, 1), *x = noise(&r, SIDE * 16, 1);
    Device *d;
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    Acts *dev_x = device_words(x, SIDE * 16, SIDE * 16, false), *y = acts(NULL, 16, SIDE);
    Weights *dev_w = device_words(w, SIDE * SIDE, SIDE * SIDE, false);
    for (int IC = 1; IC <= SIDE; IC++)
        for (int OC = 1; OC <= SIDE; OC += 3) {
            if (IC == SIDE / 2) d->plan_count = GEMM_PLANS; /* as if there were so many: making them takes seconds */
            B->linear_forward(d, y, dev_x, dev_w, NULL, 2, IC, OC);
            assert_true(d->plan_count < SIDE * SIDE);
            sum_check("many shapes", fetch(y, (size_t)(2 * OC)), linear_reference(x, w, NULL, 2, IC, OC, same), IC,
                      (size_t)(2 * OC));
        }
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* ==== Attention ==== */

/* A prompt with two answers behind it and a lone segment, grouped heads, rows in no segment; more in test_attention.c. */
static void test_attention(void **state) {
    (void)state;
    Random r = random_start(11, 0);
    enum { N = 23, H = 4, KV = 2, S = 6, STRIDE = (H + 2 * KV) * S, WIDTH = H * S };
    static const Segment segment[] = {
        {0, 7, 0, 0, 0, 0}, {7, 4, 0, 7, 7, 0}, {11, 1, 0, 7, 11, 0}, {14, 9, 0, 0, 14, 0}};
    const float *qkv = noise(&r, N * STRIDE, 1), *dout = noise(&r, N * WIDTH, 1);
    Acts *dev = acts(qkv, N, STRIDE), *out = acts(NULL, N, WIDTH), *grad = acts(NULL, N, STRIDE);
    const float scale = 1 / sqrtf(S);
    Attention a = {.rows = N,
                   .segments = 4,
                   .heads = H,
                   .kv_heads = KV,
                   .head_size = S,
                   .q_stride = STRIDE,
                   .kv_stride = STRIDE,
                   .scale = scale,
                   .segment = ints((const int32_t *)segment, 24),
                   .q = dev,
                   .k = acts_at(B, dev, H * S),
                   .v = acts_at(B, dev, (H + KV) * S),
                   .out = out,
                   .lse = floats(NULL, N * H),
                   .dout = acts(dout, N, WIDTH),
                   .dq = grad,
                   .dk = acts_at(B, grad, H * S),
                   .dv = acts_at(B, grad, (H + KV) * S)};
    B->attention_forward(D, &a);
    B->attention_backward(D, &a);
    double *want = DOUBLES(N * WIDTH), *lse = DOUBLES(N * H), *dqkv = DOUBLES(N * STRIDE);
    for (int s = 0; s < 4; s++)
        for (int i = 0; i < segment[s].len; i++)
            for (int h = 0; h < H; h++) {
                const int row = segment[s].start + i, kv = h * KV / H, n = segment[s].prefix_len + i + 1;
                double p[N], dp[N], total = 0, mean = 0;
                int key[N];
                for (int j = 0; j < n; j++) {
                    key[j] = j < segment[s].prefix_len ? segment[s].prefix_start + j
                                                       : segment[s].start + j - segment[s].prefix_len;
                    p[j] = 0;
                    for (int c = 0; c < S; c++)
                        p[j] += (double)qkv[row * STRIDE + h * S + c] * qkv[key[j] * STRIDE + (H + kv) * S + c] * scale;
                    total += exp(p[j]);
                }
                lse[row * H + h] = log(total);
                for (int j = 0; j < n; j++) {
                    p[j] = exp(p[j]) / total, dp[j] = 0;
                    for (int c = 0; c < S; c++) {
                        const double v = qkv[key[j] * STRIDE + (H + KV + kv) * S + c],
                                     g = dout[row * WIDTH + h * S + c];
                        want[row * WIDTH + h * S + c] += p[j] * v;
                        dp[j] += g * v;
                        dqkv[key[j] * STRIDE + (H + KV + kv) * S + c] += p[j] * g;
                    }
                    mean += p[j] * dp[j];
                }
                for (int j = 0; j < n; j++)
                    for (int c = 0; c < S; c++) {
                        const double ds = p[j] * (dp[j] - mean) * scale;
                        dqkv[row * STRIDE + h * S + c] += ds * qkv[key[j] * STRIDE + (H + kv) * S + c];
                        dqkv[key[j] * STRIDE + (H + kv) * S + c] += ds * qkv[row * STRIDE + h * S + c];
                    }
            }
    double *ones = DOUBLES(N * STRIDE);
    for (int i = 0; i < N * STRIDE; i++) ones[i] = 1;
    check("attention", fetch(out, N * WIDTH), want, ones, 40, N * WIDTH);
    check("attention lse", fetch(a.lse, N * H), lse, ones, 40, N * H);
    check("attention dq dk dv", fetch(grad, N * STRIDE), dqkv, ones, 200, N * STRIDE);
}

static void test_kv_store(void **state) {
    (void)state;
    Random r = random_start(12, 0);
    enum { N = 9, STRIDE = 20, KC = 7, ROWS = 13 };
    const float *kv = noise(&r, N * STRIDE, 1), *k0 = noise(&r, ROWS * KC, 1), *v0 = noise(&r, ROWS * KC, 1);
    static const int32_t slot[N] = {12, -1, 0, 3, 5, -1, 4, 11, 1};
    Acts *in = acts(kv, N, STRIDE), *k = device_words(k0, ROWS * KC, ROWS * KC, false);
    Acts *v = device_words(v0, ROWS * KC, ROWS * KC, false);
    B->kv_store(D, k, v, acts_at(B, in, 2), acts_at(B, in, 11), STRIDE, ints(slot, N), N, KC);
    float *want_k = FLOATS(ROWS * KC), *want_v = FLOATS(ROWS * KC);
    memcpy(want_k, k0, ROWS * KC * 4), memcpy(want_v, v0, ROWS * KC * 4);
    for (int i = 0; i < N; i++)
        for (int c = 0; c < KC && slot[i] >= 0; c++)
            want_k[slot[i] * KC + c] = kv[i * STRIDE + 2 + c], want_v[slot[i] * KC + c] = kv[i * STRIDE + 11 + c];
    assert_memory_equal(fetch(k, ROWS * KC), want_k, ROWS * KC * 4);
    assert_memory_equal(fetch(v, ROWS * KC), want_v, ROWS * KC * 4);
}

/* ==== Head ==== */

typedef struct HeadProblem {
    int R, C, V, Vp;
    float temperature;
    float *h, *wte, *dlogp, *dentropy, *dwte; /* dwte: what is there before */
    int32_t *target;
} HeadProblem;

static HeadProblem head_problem(Random *r, int R, int C, int V, int Vp, float temperature, double amplitude) {
    HeadProblem p = {.R = R, .C = C, .V = V, .Vp = Vp, .temperature = temperature};
    p.h = noise(r, (size_t)(R * C), 1), p.wte = noise(r, (size_t)Vp * (size_t)C, amplitude);
    p.dlogp = noise(r, (size_t)R, 1), p.dentropy = noise(r, (size_t)R, 0.5);
    p.dwte = FLOATS((size_t)Vp * (size_t)C), p.target = picks(r, (size_t)R, V);
    for (int i = 0; i < V * C; i++) p.dwte[i] = (float)random_normal(r);
    return p;
}

/* All that the head gives, computed from the formula in float64, against the device's. */
static void check_head(Device *d, const HeadProblem *p, bool entropy_gradient, double slack) {
    const int R = p->R, C = p->C, V = p->V;
    const size_t table = (size_t)p->Vp * (size_t)C, used = (size_t)(V * C);
    Weights *wte = device_words(p->wte, table, table, false);
    Acts *h = acts(p->h, R, C), *dh = acts(NULL, R, C);
    Floats *logp = floats(NULL, (size_t)R), *entropy = floats(NULL, (size_t)R), *dwte = floats(p->dwte, table);
    Ints *argmax = ints(NULL, (size_t)R), *target = ints(p->target, (size_t)R);
    Head a = {.rows = R,
              .channels = C,
              .vocab = V,
              .padded_vocab = p->Vp,
              .temperature = p->temperature,
              .h = h,
              .wte = wte,
              .target = target,
              .logp = logp,
              .entropy = entropy,
              .argmax = argmax};
    B->head(d, &a);
    const float *logp_only = fetch(logp, (size_t)R), *entropy_only = fetch(entropy, (size_t)R);
    const int32_t *most = (const int32_t *)fetch(argmax, (size_t)R);
    double *z = DOUBLES((size_t)V), *dz = DOUBLES((size_t)V), *want = DOUBLES((size_t)R),
           *want_entropy = DOUBLES((size_t)R);
    double *size = DOUBLES((size_t)R);
    Sum sh = sums((size_t)(R * C), NULL), sw = sums(used, p->dwte);
    for (int r = 0; r < R; r++) {
        double max = -INFINITY, sum = 0, entropy_r = 0, z_size = 1;
        for (int v = 0; v < V; v++) {
            double magnitude = 0;
            z[v] = 0;
            for (int c = 0; c < C; c++) {
                const double term = (double)p->h[r * C + c] * p->wte[v * C + c];
                z[v] += term, magnitude += fabs(term);
            }
            z[v] /= p->temperature, z_size = fmax(z_size, magnitude / p->temperature), max = fmax(max, z[v]);
        }
        for (int v = 0; v < V; v++) sum += exp(z[v] - max);
        const double log_sum = max + log(sum);
        for (int v = 0; v < V; v++) entropy_r -= exp(z[v] - log_sum) * (z[v] - log_sum);
        want[r] = z[p->target[r]] - log_sum, want_entropy[r] = entropy_r;
        size[r] = z_size * (C + 4) + fabs(want[r]) + entropy_r;
        if (!(z[most[r]] >= max - 2 * U * z_size * (C + 4)))
            fail_msg("argmax %d of row %d is not the largest", most[r], r);
        for (int v = 0; v < V; v++) {
            const double lp = z[v] - log_sum, q = exp(lp), g = p->dlogp[r], e = entropy_gradient ? p->dentropy[r] : 0;
            dz[v] = (g * ((v == p->target[r]) - q) - e * q * (lp + entropy_r)) / p->temperature;
            const double dz_size = (fabs(g) * ((v == p->target[r]) + q * (1 + size[r] / 8)) +
                                    fabs(e) * q * (1 + fabs(lp) + entropy_r) * (1 + size[r] / 8)) /
                                   p->temperature;
            for (int c = 0; c < C; c++) {
                sh.value[r * C + c] += dz[v] * p->wte[v * C + c],
                    sh.size[r * C + c] += dz_size * fabs(p->wte[v * C + c]);
                sw.value[v * C + c] += dz[v] * p->h[r * C + c], sw.size[v * C + c] += dz_size * fabs(p->h[r * C + c]);
            }
        }
    }
    check("logp", logp_only, want, size, slack, (size_t)R);
    check("entropy", entropy_only, want_entropy, size, slack, (size_t)R);
    a.dlogp = floats(p->dlogp, (size_t)R), a.dentropy = entropy_gradient ? floats(p->dentropy, (size_t)R) : NULL;
    a.dh = dh, a.dwte = dwte;
    B->head(d, &a);
    assert_memory_equal(fetch(logp, (size_t)R), logp_only,
                        (size_t)R * sizeof(float)); /* the gradient changes no value */
    check("dh", fetch(dh, (size_t)(R * C)), sh.value, sh.size, slack * 16 + V, (size_t)(R * C));
    const float *got = fetch(dwte, table);
    check("dwte", got, sw.value, sw.size, slack * 16 + R, used);
    for (size_t i = used; i < table; i++) assert_true(got[i] == 0); /* padding gets none */
    for (size_t i = 0; i < used; i++) sw.value[i] += sw.value[i] - p->dwte[i], sw.size[i] *= 2;
    a.entropy = NULL, a.argmax = NULL; /* again: dh is set, dwte added to */
    B->head(d, &a);
    check("dh again", fetch(dh, (size_t)(R * C)), sh.value, sh.size, slack * 16 + V, (size_t)(R * C));
    check("dwte again", fetch(dwte, table), sw.value, sw.size, slack * 16 + 2 * R, used);
    const float *before = fetch(dwte, table);
    a.dwte = NULL; /* not wanted */
    B->head(d, &a);
    assert_memory_equal(fetch(dwte, table), before, table * sizeof(float));
    Floats *logits = floats(NULL, (size_t)(R * V));
    B->logits(d, logits, h, wte, R, C, V, p->Vp);
    Sum all = linear_reference(p->h, p->wte, NULL, R, C, V, same);
    if (slack < 100) sum_check("logits", fetch(logits, (size_t)(R * V)), all, C, (size_t)(R * V));
}

static void test_head(void **state) {
    (void)state;
    Random r = random_start(13, 0);
    static const struct {
        int R, C, V, Vp;
        float temperature;
        double amplitude;
    } shape[] = {{1, 24, 257, 384, 1, 0.3},   {37, 24, 257, 384, 0.7f, 0.3}, {16, 8, 5, 128, 2, 1},
                 {19, 16, 128, 128, 1, 0.5},  {3, 24, 257, 384, 0.1f, 0.5},  {33, 4, 1, 128, 1, 1},
                 {7, 24, 5000, 5120, 1, 0.3}, {5, 24, 257, 384, 1, 8}};
    Device *d;
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        HeadProblem p =
            head_problem(&r, shape[s].R, shape[s].C, shape[s].V, shape[s].Vp, shape[s].temperature, shape[s].amplitude);
        for (int i = p.V * p.C; i < p.Vp * p.C; i++) p.wte[i] *= 100; /* padding rows must count for nothing */
        check_head(d, &p, s % 2, 4);
    }
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* Rows beyond one chunk of logits: a padded vocabulary so wide that 50 rows are 4 chunks. */
static void test_head_chunks(void **state) {
    (void)state;
    Random r = random_start(14, 0);
    enum { R = 50, C = 2, V = 61, VP = 1 << 20 };
    HeadProblem p = head_problem(&r, R, C, V, 128, 0.9f, 0.7);
    float *wide = FLOATS((size_t)VP * C), *dwide = FLOATS((size_t)VP * C);
    memcpy(wide, p.wte, V * C * sizeof *wide), memcpy(dwide, p.dwte, V * C * sizeof *wide);
    p.wte = wide, p.dwte = dwide, p.Vp = VP;
    assert_true(head_chunk_rows(R, VP) < R / 2);
    Device *d;
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    check_head(d, &p, true, 4);
    assert_true(B->sync(d, &e));
    B->close(d);
    for (int rows = 1; rows < 40000;
         rows += 1 + rows / 7) /* chunks hold all rows, are whole blocks, within the limit */
        for (int vp = 128; vp <= 1 << 22; vp *= 2) {
            const int chunk = head_chunk_rows(rows, vp);
            assert_true(chunk % ROW_ALIGN == 0 && chunk > 0);
            assert_true(chunk == ROW_ALIGN || (size_t)chunk * (size_t)vp <= HEAD_CHUNK);
        }
}

static void test_head_bf16(void **state) {
    (void)state;
    Device *d;
    Error e;
    if (!B->open(&d, DTYPE_BF16, &e)) skip();
    Random r = random_start(15, 0);
    HeadProblem p = head_problem(&r, 37, 24, 257, 384, 0.8f, 0.3);
    for (int i = 0; i < p.R * p.C; i++) p.h[i] = (float)bf16(p.h[i]); /* exact operands: logits are as in float32; */
    for (int i = 0; i < p.V * p.C; i++) p.wte[i] = (float)bf16(p.wte[i]);
    check_head(d, &p, true, 0x1p16 / 16); /* the gradient of the logits is rounded to 8 bits */
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* Extremes: logits a thousand apart, equal ones, NaN; argmax takes the first of several. */
static void test_head_extremes(void **state) {
    (void)state;
    enum { V = 10, VP = 128, R = 4 };
    float wte[VP * R] = {0}, h[R * R] = {0};
    for (int i = 0; i < R; i++) h[i * R + i] = 1; /* z[r][v] = wte[v][r] */
    wte[3 * R] = 1000, wte[4 * R] = -1000;
    wte[2 * R + 2] = wte[7 * R + 2] = 5;
    for (int v = 0; v < V; v++) wte[v * R + 3] = v == 6 ? NAN : 1;
    static const int32_t target[R] = {4, 0, 7, 6};
    const float dlogp[R] = {1, 1, 1, 1};
    Acts *dh = acts(NULL, R, R);
    Floats *logp = floats(NULL, R), *entropy = floats(NULL, R);
    Ints *argmax = ints(NULL, R);
    const Head a = {.rows = R,
                    .channels = R,
                    .vocab = V,
                    .padded_vocab = VP,
                    .temperature = 1,
                    .h = acts(h, R, R),
                    .wte = weights(wte, VP * R),
                    .target = ints(target, R),
                    .logp = logp,
                    .entropy = entropy,
                    .argmax = argmax,
                    .dlogp = floats(dlogp, R),
                    .dentropy = floats(dlogp, R),
                    .dh = dh};
    B->head(D, &a);
    const float *lp = fetch(logp, R), *en = fetch(entropy, R), *g = fetch(dh, R * R);
    const int32_t *most = (const int32_t *)fetch(argmax, R);
    /* an identity in h cannot keep 0 * NaN out of the other rows: their column 3 is NaN, and so are their logits */
    assert_true(isnan(lp[3]) && isnan(en[3]));
    for (int i = 0; i < R; i++) assert_in_range(most[i], 0, V - 1);
    (void)g;
    for (int v = 0; v < V; v++) wte[v * R + 3] = 1;
    B->weights_upload(D, (Weights *)(uintptr_t)a.wte, wte, VP * R);
    B->head(D, &a);
    lp = fetch(logp, R), en = fetch(entropy, R), g = fetch(dh, R * R), most = (const int32_t *)fetch(argmax, R);
    assert_true(lp[0] == -2000 && en[0] == 0);
    assert_true(fabs(lp[1] + log(10)) < 1e-6 && fabs(en[1] - log(10)) < 1e-6);
    assert_true(most[0] == 3 && most[1] == 0 && most[2] == 2 && most[3] == 0);
    for (int i = 0; i < R * R; i++) assert_true(isfinite(g[i]));
    const Head none = {.rows = 0, .channels = R, .vocab = V, .padded_vocab = VP, .temperature = 1};
    B->head(D, &none);
}

/* ==== Sampling ==== */

/* The rule of backend.h in float64: which tokens stay, with what probability. y: logits after penalty and temperature.
 * Returns how close the nearest decision is to going the other way, relative. */
static double keep(const Draw *a, const double *y, int V, double *probability) {
    double max = -INFINITY, sum = 0, margin = 1;
    bool kept[512];
    assert_true(V <= 512);
    for (int v = 0; v < V; v++) max = fmax(max, y[v]), kept[v] = true;
    if (a->top_k > 0 && a->top_k < V)
        for (int v = 0; v < V; v++) {
            int above = 0;
            for (int o = 0; o < V; o++) above += y[o] > y[v];
            kept[v] = above < a->top_k; /* ties with the last one stay */
        }
    if (a->top_p < 1) {
        bool stays[512];
        double all = 0;
        for (int v = 0; v < V; v++) all += kept[v] ? exp(y[v] - max) : 0;
        for (int v = 0; v < V; v++) {
            double above = 0; /* the mass of all that are likelier: v is needed while that is below top_p */
            for (int o = 0; o < V; o++) above += kept[o] && y[o] > y[v] ? exp(y[o] - max) / all : 0;
            stays[v] = kept[v] && (above < (double)a->top_p || y[v] == max);
            if (kept[v] && y[v] != max) margin = fmin(margin, fabs(above - (double)a->top_p));
        }
        memcpy(kept, stays, sizeof kept);
    }
    if (a->min_p > 0)
        for (int v = 0; v < V; v++) {
            margin = y[v] == max ? margin : fmin(margin, fabs(y[v] - max - log(a->min_p)));
            kept[v] &= y[v] == max || exp(y[v] - max) >= (double)a->min_p;
        }
    for (int v = 0; v < V; v++) sum += probability[v] = kept[v] ? exp(y[v] - max) : 0;
    for (int v = 0; v < V; v++) probability[v] /= sum;
    return margin;
}

static void test_sample(void **state) {
    (void)state;
    Random r = random_start(16, 0);
    enum { COLUMNS = 20, V = 257, VP = 384, R = 150, HISTORY = 9 };
    static const struct {
        float temperature, top_p, min_p, penalty;
        int top_k;
    } how[] = {{1, 1, 0, 1, 0},       {0.5f, 1, 0, 1, 0},
               {1, 0.9f, 0, 1, 0},    {1, 0.3f, 0, 1, 0},
               {1, 1, 0, 1, 5},       {1, 1, 0, 1, 1},
               {1, 1, 0.1f, 1, 0},    {1.7f, 0.8f, 0.02f, 1, 40},
               {1, 1, 0, 1.3f, 0},    {0.8f, 0.95f, 0, 1.5f, 50},
               {0, 1, 0, 1, 0},       {0, 1, 0, 2, 0},
               {1, 1e-6f, 0, 1, 0},   {1, 1, 1, 1, 0},
               {1, 0.99f, 0, 1, 256}, {1, 1, 0, 1, 257},
               {1, 1, 0, 0.7f, 0},    {3, 0.999f, 0, 1, 1000}};
    float *h = FLOATS(R * COLUMNS), *wte = FLOATS(VP * COLUMNS);
    for (int i = 0; i < VP * COLUMNS; i++) {
        const int column = i % COLUMNS;
        /* a few columns have ties: logits in steps of 1/2 or of 2 */
        const double x = 2 * random_normal(&r), step = column < 4 ? 0.5 : column < 6 ? 2 : 0;
        wte[i] = i / COLUMNS >= V ? 50 : (float)(step > 0 ? step * nearbyint(x / step) : x);
    }
    for (int i = 0; i < R; i++) h[i * COLUMNS + i % COLUMNS] = 1; /* logits of row i are a column of wte, exactly */
    int32_t *stream = INTS(2 * R), *index = picks(&r, R, 1000), *history = picks(&r, R * HISTORY, V),
            *count = picks(&r, R, HISTORY + 1);
    for (int i = 0; i < R; i++) {
        stream[2 * i] = (int32_t)random_next(&r), stream[2 * i + 1] = (int32_t)random_next(&r);
        if (count[i] > 2) history[i * HISTORY + 1] = history[i * HISTORY]; /* seen twice: penalised once */
    }
    Acts *dev_h = acts(h, R, COLUMNS);
    Weights *dev_wte = weights(wte, VP * COLUMNS);
    int unclear = 0;
    for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
        Floats *logp = floats(NULL, R), *kept_logp = floats(NULL, R);
        Ints *token = ints(NULL, R);
        const Draw a = {.rows = R,
                        .channels = COLUMNS,
                        .vocab = V,
                        .padded_vocab = VP,
                        .temperature = how[k].temperature,
                        .top_p = how[k].top_p,
                        .min_p = how[k].min_p,
                        .repetition_penalty = how[k].penalty,
                        .top_k = how[k].top_k,
                        .seed = 0x123456789abcdef + k,
                        .h = dev_h,
                        .wte = dev_wte,
                        .stream = ints(stream, 2 * R),
                        .index = ints(index, R),
                        .history = how[k].penalty != 1 ? ints(history, R * HISTORY) : NULL,
                        .history_len = how[k].penalty != 1 ? ints(count, R) : NULL,
                        .history_stride = HISTORY,
                        .token = token,
                        .logp = logp,
                        .kept_logp = kept_logp};
        B->sample(D, &a);
        const int32_t *got = (const int32_t *)fetch(token, R);
        const float *got_logp = fetch(logp, R), *got_kept = fetch(kept_logp, R);
        for (int i = 0; i < R; i++) {
            double y[V], z[V], p[V], sum = 0, running = 0, margin = 1;
            const double t = how[k].temperature > 0 ? how[k].temperature : 1;
            for (int v = 0; v < V; v++) z[v] = wte[v * COLUMNS + i % COLUMNS];
            memcpy(y, z, sizeof y);
            if (a.history)
                for (int s = 0; s < count[i]; s++) {
                    const int v = history[i * HISTORY + s];
                    y[v] = z[v] > 0 ? z[v] / how[k].penalty : z[v] * how[k].penalty;
                }
            for (int v = 0; v < V; v++) y[v] /= t, z[v] /= t, sum += exp(z[v]);
            int expected = -1;
            if (how[k].temperature == 0) {
                for (int v = 0; v < V; v++)
                    if (expected < 0 || y[v] > y[expected]) expected = v;
            } else {
                margin = keep(&a, y, V, p);
                const uint64_t s = (uint64_t)(uint32_t)stream[2 * i + 1] << 32 | (uint32_t)stream[2 * i];
                const double u = random_uniform(a.seed, s, (uint64_t)index[i]);
                for (int v = 0; v < V && expected < 0; v++) {
                    running += p[v];
                    margin = p[v] > 0 ? fmin(margin, fabs(running - u)) : margin;
                    if (running > u) expected = v;
                }
            }
            if (margin < 1e-6) {
                unclear++;
                continue;
            }
            if (got[i] != expected) fail_msg("setting %zu, row %d: token %d, expected %d", k, i, got[i], expected);
            assert_true(fabs(got_logp[i] - (z[got[i]] - log(sum))) < 2e-6 * (1 + fabs(z[got[i]])));
            const double kept = how[k].temperature == 0 ? 0 : log(p[got[i]]);
            assert_true(fabs(got_kept[i] - kept) < 4e-6 * (1 + fabs(kept)));
        }
    }
    if (unclear >= 20) fail_msg("%d rows cannot be decided", unclear);
    const Draw none = {.rows = 0, .channels = COLUMNS, .vocab = V, .padded_vocab = VP, .temperature = 1};
    B->sample(D, &none);
}

/* What a row draws does not depend on the rows beside it, nor on chunks. */
static void test_sample_alone(void **state) {
    (void)state;
    Random r = random_start(17, 0);
    enum { C = 4, V = 50, VP = 1 << 20, R = 40 };
    float *h = noise(&r, R * C, 1), *wte = FLOATS((size_t)VP * C);
    for (int i = 0; i < V * C; i++) wte[i] = (float)random_normal(&r);
    int32_t *stream = INTS(2 * R), *index = INTS(R), all[R];
    for (int i = 0; i < R; i++) stream[2 * i] = i, index[i] = 3;
    Weights *dev_wte = weights(wte, (size_t)VP * C);
    Draw a = {.rows = R,
              .channels = C,
              .vocab = V,
              .padded_vocab = VP,
              .temperature = 1,
              .top_p = 0.9f,
              .repetition_penalty = 1,
              .seed = 5,
              .h = acts(h, R, C),
              .wte = dev_wte,
              .stream = ints(stream, 2 * R),
              .index = ints(index, R),
              .token = ints(NULL, R),
              .logp = floats(NULL, R)};
    assert_true(head_chunk_rows(R, VP) < R);
    B->sample(D, &a);
    B->download(D, all, a.token, sizeof all);
    for (int i = 0; i < R; i += 3) {
        int32_t one;
        a.rows = 1, a.h = acts(h + i * C, 1, C), a.stream = ints(stream + 2 * i, 2), a.token = ints(NULL, 1);
        B->sample(D, &a);
        B->download(D, &one, a.token, sizeof one);
        assert_int_equal(one, all[i]);
    }
}

/* The k-th largest by sorting; values with many ties. */
static void test_kth_largest(void **state) {
    (void)state;
    Random r = random_start(18, 0);
    for (int trial = 0; trial < 3000; trial++) {
        float x[60], sorted[60];
        const int n = 1 + (int)random_below(&r, 60), k = 1 + (int)random_below(&r, (uint64_t)n);
        const uint64_t values = 1 + random_below(&r, 70);
        for (int i = 0; i < n; i++) x[i] = sorted[i] = (float)random_below(&r, values);
        qsort(sorted, (size_t)n, sizeof *sorted, sample_descending);
        assert_true(sample_kth_largest(x, n, k) == sorted[k - 1]);
    }
}

/* ==== Value head ==== */

static void test_value(void **state) {
    (void)state;
    Random r = random_start(19, 0);
    static const int shape[][2] = {{1, 24}, {37, 24}, {5, 100}, {64, 1}, {3, 130}};
    for (int s = 0; s < 5; s++) {
        const int R = shape[s][0], C = shape[s][1];
        const size_t n = (size_t)(R * C);
        const float *h = noise(&r, n, 1), *w = noise(&r, (size_t)C, 1), *b = noise(&r, 1, 1),
                    *dvalue = noise(&r, (size_t)R, 1);
        const float *h0 = noise(&r, n, 1), *w0 = noise(&r, (size_t)C, 1), *b0 = noise(&r, 1, 1);
        Floats *value = floats(NULL, (size_t)R), *dw = floats(w0, (size_t)C), *db = floats(b0, 1),
               *dv = floats(dvalue, (size_t)R);
        Acts *dev_h = acts(h, R, C), *dh = acts(h0, R, C);
        Weights *dev_w = weights(w, (size_t)C);
        B->value_forward(D, value, dev_h, dev_w, weights(b, 1), R, C);
        sum_check("value", fetch(value, (size_t)R), linear_reference(h, w, b, R, C, 1, same), C, (size_t)R);
        Sum sh = sums(n, h0), sw = sums((size_t)C, w0), sb = sums(1, b0);
        for (int twice = 0; twice < 2; twice++) {
            B->value_backward(D, dh, dw, db, dv, dev_h, dev_w, R, C);
            for (int i = 0; i < R; i++) {
                sum_add(sb, 0, dvalue[i]);
                for (int c = 0; c < C; c++) {
                    sum_add(sh, (size_t)(i * C + c), (double)dvalue[i] * w[c]);
                    sum_add(sw, (size_t)c, (double)dvalue[i] * h[i * C + c]);
                }
            }
            sum_check("value dh", fetch(dh, n), sh, 2, n);
            sum_check("value dw", fetch(dw, (size_t)C), sw, 2 * R, (size_t)C);
            sum_check("value db", fetch(db, 1), sb, 2 * R, 1);
        }
    }
}

/* ==== Optimizer ==== */

static void test_square_sum(void **state) {
    (void)state;
    Random r = random_start(20, 0);
    static const size_t length[] = {0, 1, 15, 65536, 65537, 300001};
    for (size_t s = 0; s < sizeof length / sizeof *length; s++) {
        const float *x = noise(&r, length[s], 1);
        long double want = 0;
        for (size_t i = 0; i < length[s]; i++) want += (long double)x[i] * x[i];
        const double got = B->square_sum(D, floats(x, length[s]), length[s]);
        assert_true(fabs(got - (double)want) <= 1e-12 * (double)want);
    }
    const float large[3] = {3e30f, 0, 4e30f}, bad[2] = {1, NAN}; /* no overflow inside; NaN comes out */
    assert_true(fabs(B->square_sum(D, floats(large, 3), 3) / 25e60 - 1) < 1e-6);
    assert_true(isnan(B->square_sum(D, floats(bad, 2), 2)));
}

static void test_adamw(void **state) {
    (void)state;
    Random r = random_start(21, 0);
    enum { N = 1003 };
    static const struct {
        double lr, b1, b2, eps, decay, scale;
    } how[] = {{1e-2, 0.9, 0.999, 1e-8, 0, 1},
               {1e-1, 0.9, 0.95, 1e-6, 0.1, 0.25},
               {1, 0, 0, 1e-8, 0.5, 1},
               {3e-4, 0.8, 0.9, 1, 0, 3}};
    for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
        const float *start = noise(&r, N, 1);
        double *p = DOUBLES(N), *m = DOUBLES(N), *v = DOUBLES(N), *size = DOUBLES(N);
        for (int i = 0; i < N; i++) p[i] = start[i];
        Weights *w = weights(start, N);
        Floats *dm = floats(FLOATS(N), N), *dv = floats(FLOATS(N), N);
        const double b1 = (float)how[k].b1, b2 = (float)how[k].b2, lr = (float)how[k].lr, eps = (float)how[k].eps;
        for (int step = 1; step <= 12; step++) {
            float *grad = noise(&r, N, pow(10, step % 5 - 3));
            for (int i = 0; i < N; i += 10) grad[i] = 0; /* never a gradient: moved by the decay alone */
            const AdamW a = {.n = N,
                             .lr = (float)lr,
                             .beta1 = (float)b1,
                             .beta2 = (float)b2,
                             .eps = (float)eps,
                             .weight_decay = (float)how[k].decay,
                             .grad_scale = (float)how[k].scale,
                             .step = step,
                             .weights = w,
                             .grad = floats(grad, N),
                             .m = dm,
                             .v = dv};
            B->adamw(D, &a);
            for (int i = 0; i < N; i++) {
                const double g = grad[i] * how[k].scale;
                m[i] = b1 * m[i] + (1 - b1) * g, v[i] = b2 * v[i] + (1 - b2) * g * g;
                const double update = m[i] / (1 - pow(b1, step)) / (sqrt(v[i] / (1 - pow(b2, step))) + eps);
                p[i] -= lr * (update + (float)how[k].decay * p[i]);
                size[i] += 4 * fabs(p[i]) + lr * 16 * fmax(1, fabs(update)); /* m cancels: relative to what went in */
            }
            check("adamw weights", fetch(w, N), p, size, 2, N);
        }
        for (int i = 0; i < N; i += 10)
            assert_true(fabs(p[i] - start[i] * pow(1 - lr * (float)how[k].decay, 12)) < 1e-12);
        check("adamw v", fetch(dv, N), v, NULL, 40, N);
    }
}

/* ==== Threads ==== */

enum { TN = 200, TC = 136, TV = 600, TVP = 640, OUTPUTS = 24 }; /* large enough for threads to be woken */

/* Runs the table's operations with `threads` threads; what each wrote, concatenated by operation. exact: how many of
 * the outputs come first that hold no matrix product. */
static int run_all(int threads, float *output[OUTPUTS], size_t length[OUTPUTS], int *exact) {
    omp_set_num_threads(threads);
    Device *d;
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    Random r = random_start(22, 0);
    const size_t n = TN * TC;
    int k = 0;
    const float *x = noise(&r, n, 1), *y = noise(&r, n, 1), *small = noise(&r, TC, 1),
                *table = noise(&r, TVP * TC, 0.2);
    const int32_t *token = picks(&r, TN, TV), *row = picks(&r, TN, TN);
    Ints *dt = ints(token, TN), *drow = ints(row, TN);
    Acts *dx = acts(x, TN, TC), *dy = acts(y, TN, TC), *sum = acts(NULL, TN, TC), *out = acts(NULL, TN, TC);
    Weights *w = weights(small, TC), *wte = device_words(table, TVP * TC, TVP * TC, false);
    Floats *mean = floats(NULL, TN), *rstd = floats(NULL, TN), *dw = floats(small, TC), *db = floats(small, TC);
    Floats *dwte = floats(table, TVP * TC), *dwpe = floats(table, TVP * TC);
#define OUTPUT(from, size) output[k] = fetch(from, size), length[k++] = size
    B->embed_forward(d, out, wte, wte, dt, drow, TN, TC);
    OUTPUT(out, n);
    B->embed_backward(d, dwte, dwpe, dx, dt, drow, TN, TC);
    OUTPUT(dwte, TVP * TC);
    OUTPUT(dwpe, TVP * TC);
    B->residual_layernorm_forward(d, sum, out, mean, rstd, dx, dy, w, w, TN, TC);
    OUTPUT(out, n);
    B->noise_add(d, out, mean, TN, TC, 1, 2);
    OUTPUT(out, n);
    B->layernorm_backward(d, out, dw, db, dy, sum, mean, rstd, w, TN, TC);
    OUTPUT(out, n);
    OUTPUT(dw, TC);
    OUTPUT(db, TC);
    B->gelu_forward(d, out, dx, n);
    OUTPUT(out, n);
    B->gelu_backward(d, dy, dx, n);
    OUTPUT(dy, n);
    B->scatter_rows(d, dy, dx, drow, TN, TC);
    OUTPUT(dy, n);
    B->value_backward(d, dy, dw, db, mean, dx, w, TN, TC);
    OUTPUT(dy, n);
    OUTPUT(dw, TC);
    B->value_forward(d, mean, dx, w, w, TN, TC);
    OUTPUT(mean, TN);
    const double squares = B->square_sum(d, dwte, TVP * TC);
    output[k] = FLOATS(2), length[k] = 2;
    memcpy(output[k++], &squares, sizeof squares);
    const AdamW a = {.n = TVP * TC,
                     .lr = 0.1f,
                     .beta1 = 0.9f,
                     .beta2 = 0.9f,
                     .eps = 1e-8f,
                     .grad_scale = 1,
                     .step = 1,
                     .weights = wte,
                     .grad = dwte,
                     .m = floats(FLOATS(TVP * TC), TVP * TC),
                     .v = floats(FLOATS(TVP * TC), TVP * TC)};
    B->adamw(d, &a);
    OUTPUT(wte, TVP * TC);
    *exact = k;
    B->linear_forward(d, out, dx, weights_at(B, wte, 0), NULL, TN, TC, TC);
    OUTPUT(out, n);
    B->linear_backward(d, out, dwpe, db, dx, dy, wte, TN, TC, TC);
    OUTPUT(out, n);
    OUTPUT(dwpe, TC * TC);
    const Head head = {.rows = TN,
                       .channels = TC,
                       .vocab = TV,
                       .padded_vocab = TVP,
                       .temperature = 5,
                       .h = dx,
                       .wte = wte,
                       .target = dt,
                       .logp = rstd,
                       .dlogp = mean,
                       .dh = out,
                       .dwte = dwte};
    B->head(d, &head);
    OUTPUT(rstd, TN);
    OUTPUT(out, n);
    OUTPUT(dwte, TVP * TC);
#undef OUTPUT
    assert_true(B->sync(d, &e));
    B->close(d);
    return k;
}

static void test_threads(void **state) {
    (void)state;
    const int threads = omp_get_max_threads();
    float *one[OUTPUTS], *other[OUTPUTS];
    size_t length[OUTPUTS];
    int exact;
    const int n = run_all(1, one, length, &exact);
    for (int t = 2; t <= 3; t++) {
        run_all(t, other, length, &exact);
        for (int k = 0; k < exact; k++)
            if (memcmp(one[k], other[k], length[k] * sizeof(float)))
                fail_msg("output %d is not the same with %d threads as with one", k, t);
        for (int k = exact; k < n; k++) {
            double most = 0, difference = 0;
            for (size_t i = 0; i < length[k]; i++)
                most = fmax(most, fabs(one[k][i])), difference = fmax(difference, fabs(one[k][i] - other[k][i]));
            if (!(difference <= 4e-6 * most))
                fail_msg("output %d differs by %g of %g with %d threads", k, difference, most, t);
        }
    }
    omp_set_num_threads(threads);
}

static int open_device(void **state) {
    (void)state;
    Error e;
    B = backend_cpu();
    if (B->open(&D, DTYPE_FLOAT32, &e)) return 0;
    print_error("%s\n", e.text);
    return 1;
}

static int close_device(void **state) {
    (void)state;
    B->close(D);
    return 0;
}

int main(void) {
#define TEST(name) cmocka_unit_test_teardown(name, check_memory)
    const struct CMUnitTest tests[] = {
        TEST(test_table),
        TEST(test_memory),
        TEST(test_failure),
        TEST(test_peak),
        TEST(test_scratch),
        TEST(test_embed),
        TEST(test_noise),
        TEST(test_rows),
        TEST(test_linear),
        TEST(test_linear_bf16),
        TEST(test_bf16_operands),
        TEST(test_gelu),
        TEST(test_stale_weights),
        TEST(test_many_shapes),
        TEST(test_layernorm_forward),
        TEST(test_layernorm_backward),
        TEST(test_attention),
        TEST(test_kv_store),
        TEST(test_head),
        TEST(test_head_chunks),
        TEST(test_head_bf16),
        TEST(test_head_extremes),
        TEST(test_sample),
        TEST(test_sample_alone),
        TEST(test_kth_largest),
        TEST(test_value),
        TEST(test_square_sum),
        TEST(test_adamw),
        TEST(test_threads),
    };
    return cmocka_run_group_tests_name("backend", tests, open_device, close_device);
}
