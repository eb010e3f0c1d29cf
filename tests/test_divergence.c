/* test_divergence.c - divergences of two models' distributions: the formulas against difference quotients, the CPU backend
 * against the formulas in float64 and against TRL's loss, and the model's gradients. */
#include "../llmc/base/error.h"    /* xcalloc, Error */
#include "../llmc/base/random.h"   /* random_normal, Random, random_start */
#include "../llmc/model/backend.h" /* Floats, Acts, ROW_ALIGN, Weights, ... */
#include "cpu_device.h"            /* B, D, close_device, open_device */
#include "divergence.h"            /* divergence_words, divergence_narrow, divergence_softmax, ... */
#include "golden.h"                /* golden, check_near, golden_floats, Golden, ... */

/* The closed forms of the gradients are the derivatives of the values: central differences of step h are off by h^2
 * times the third derivative, which is about 1, and by the rounding of the values over h. */
static void test_formulas(void **state) {
    (void)state;
    enum { V = 7 };
    const double h = 1e-5;
    Random r = random_start(3, 0);
    double z[V], u[V], log_p[V], S[V], T[V], dz[V], unused[V];
    for (int trial = 0; trial < 60; trial++)
        for (int kind = 0; kind < TOKEN_DIVERGENCE_KINDS; kind++) {
            const double tau = (double[]){0.5, 1, 2}[trial % 3], b = (double[]){0.1, 0.5, 0.9}[trial / 3 % 3];
            for (int v = 0; v < V; v++) z[v] = 2 * random_normal(&r), u[v] = 2 * random_normal(&r);
            divergence_softmax(u, V, tau, log_p, T);
            divergence_softmax(z, V, tau, log_p, S);
            const double value = divergence_formula((TokenDivergenceKind)kind, S, T, V, b, tau, dz);
            assert_true(value > 0);
            for (int v = 0; v < V; v++) {
                const double at = z[v];
                double side[2];
                for (int k = 0; k < 2; k++) {
                    z[v] = at + (k ? h : -h);
                    divergence_softmax(z, V, tau, log_p, S);
                    side[k] = divergence_formula((TokenDivergenceKind)kind, S, T, V, b, tau, unused);
                }
                z[v] = at;
                check_near((side[1] - side[0]) / (2 * h), dz[v], 1, 1e-8, "a derivative");
            }
        }
}

/* The estimate log S(y) - log T(y) of a token y that S draws, times the gradient of log S(y), has the mean of the gradient
 * of the reverse KL divergence: the sum over all y of S(y) (1{y = v} - S_v) (log S(y) - log T(y)) is S_v (log S_v - log T_v -
 * D). */
static void test_sampled_estimate(void **state) {
    (void)state;
    enum { V = 9 };
    Random r = random_start(6, 0);
    double z[V], u[V], s[V], t[V], S[V], T[V], dz[V];
    for (int trial = 0; trial < 20; trial++) {
        for (int v = 0; v < V; v++) z[v] = 2 * random_normal(&r), u[v] = 2 * random_normal(&r);
        divergence_softmax(z, V, 1, s, S);
        divergence_softmax(u, V, 1, t, T);
        divergence_formula(TOKEN_REVERSE_KL, S, T, V, 0, 1, dz);
        for (int v = 0; v < V; v++) {
            double mean = 0;
            for (int y = 0; y < V; y++) mean += S[y] * ((y == v) - S[v]) * (s[y] - t[y]);
            check_near(mean, dz[v], 1, 1e-13, "the mean of the estimate's gradient");
        }
    }
}

static void test_float32(void **state) {
    (void)state;
    divergence_check_all(B, D, 64);
}

/* Operands that bfloat16 represents: the logits are those of float32, and their gradient is rounded to 8 bits. */
static void test_bf16(void **state) {
    (void)state;
    Device *d;
    Error e;
    if (!B->open(&d, DTYPE_BF16, &e)) skip();
    divergence_check_all(B, d, 0x1p16);
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* Output matrices in blocks, of a model and of its teacher, or of a list's student: few rows and many. */
static void test_blocks(void **state) {
    (void)state;
    for (int rows = 3; rows < 100; rows += 40)
        for (int listed = 0; listed < 6; listed += 5) {
            const DivergenceShape s = {rows, 40, 257, 384, 64, 320, 0.9f, 1, 0.5f, 3, 2, 0.3, listed, true};
            divergence_check(B, D, &s, TOKEN_JSD, 8, 64);
        }
}

/* Rows that need several chunks: the padded vocabularies are so wide that 21 rows are several. */
static void test_chunks(void **state) {
    (void)state;
    const DivergenceShape s = {21, 2, 61, 1 << 20, 2, 1 << 20, 0.9f, 1, 0.5f, 0, 0, 0.7, 0, false};
    divergence_check(B, D, &s, TOKEN_JSD, 5, 64);
}

/* TRL's generalised JSD loss, with the gradient of the student's logits by autograd. beta 0 and 1 are TRL's names of
 * the forward and the reverse KL divergence. The logits are the rows of h, by an identity matrix. */
static void test_trl(void **state) {
    (void)state;
    Golden g;
    FILE *f = golden_open("divergence.txt");
    int cases = 0;
    for (; golden_next(f, &g); cases++) {
        const int V = (int)golden(&g, "vocab")[0], R = golden_count(&g, "student") / V;
        const double beta = golden(&g, "beta")[0];
        const size_t n = (size_t)(R * V), square = (size_t)(V * V);
        DivergenceCall c = {.b = B, .d = D};
        float *identity = (float *)xcalloc(square, sizeof *identity), *student = golden_floats(&g, "student"),
              *teacher = golden_floats(&g, "teacher"), *weight = golden_floats(&g, "weight");
        int32_t *target = (int32_t *)xcalloc((size_t)R, sizeof *target);
        for (int v = 0; v < V; v++) identity[v * V + v] = 1;
        const size_t room = (size_t)(R + ROW_ALIGN) * (size_t)V;
        float *got = (float *)xcalloc(room, sizeof *got);
        const Weights *unit = (const Weights *)divergence_narrow(&c, identity, square, square);
        Acts *dh = (Acts *)divergence_narrow(&c, got, room, room);
        Floats *value = (Floats *)divergence_words(&c, NULL, (size_t)R);
        const TokenDivergence a = {.head = {.rows = R,
                                            .channels = V,
                                            .vocab = V,
                                            .padded_vocab = V,
                                            .temperature = 1,
                                            .h = (const Acts *)divergence_narrow(&c, student, n, room),
                                            .weight = unit,
                                            .target = (const Ints *)divergence_words(&c, target, (size_t)R),
                                            .logp = (Floats *)divergence_words(&c, NULL, (size_t)R),
                                            .dh = dh},
                                   .kind = beta == 0   ? TOKEN_FORWARD_KL
                                           : beta == 1 ? TOKEN_REVERSE_KL
                                                       : TOKEN_JSD,
                                   .channels = V,
                                   .padded_vocab = V,
                                   .temperature = (float)golden(&g, "temperature")[0],
                                   .beta = (float)beta,
                                   .h = (const Acts *)divergence_narrow(&c, teacher, n, room),
                                   .output = unit,
                                   .value = value,
                                   .logp = (Floats *)divergence_words(&c, NULL, (size_t)R),
                                   .weight = (const Floats *)divergence_words(&c, weight, (size_t)R)};
        B->divergence(D, &a);
        B->download(D, got, value, (size_t)R * sizeof *got);
        /* logits of up to 8 at a temperature of 0.5 are rounded to 2^-20, so a difference of log-probabilities is off by
         * some 4e-6; a gradient has up to six times such differences: the weight over the temperature */
        for (int r = 0; r < R; r++) check_near(got[r], golden(&g, "value")[r], 1, 5e-5, g.name);
        B->weights_download(D, got, (const Weights *)dh, n);
        for (size_t i = 0; i < n; i++) check_near(got[i], golden(&g, "gradient")[i], 1, 5e-5, g.name);
        divergence_free(&c);
        free(identity), free(student), free(teacher), free(weight), free(target), free(got);
        golden_free(&g);
    }
    fclose(f);
    assert_int_equal(cases, 12);
}

/* Equal distributions have the divergence 0; distributions without a common token have finite divergences where the
 * formula has; NaN gives NaN. */
static void test_extremes(void **state) {
    (void)state;
    enum { V = 6, R = 4 };
    float student[(R + ROW_ALIGN) * V] = {0}, teacher[(R + ROW_ALIGN) * V] = {0}, identity[V * V] = {0};
    for (int v = 0; v < V; v++) identity[v * V + v] = 1;
    for (int v = 0; v < V; v++) student[v] = teacher[v] = (float)v - 2;
    student[V] = teacher[V + 1] = 400; /* S and T have one token each, and not the same */
    teacher[2 * V + 3] = NAN;
    student[3 * V + 3] = NAN;
    const int32_t target[R] = {0};
    const float ones[R] = {1, 1, 1, 1};
    for (int kind = 0; kind < TOKEN_DIVERGENCE_KINDS; kind++) {
        DivergenceCall c = {.b = B, .d = D};
        float got[(R + ROW_ALIGN) * V] = {0};
        const Weights *unit = (const Weights *)divergence_narrow(&c, identity, V * V, V * V);
        Acts *dh = (Acts *)divergence_narrow(&c, got, sizeof got / sizeof *got, sizeof got / sizeof *got);
        Floats *value = (Floats *)divergence_words(&c, NULL, R);
        const TokenDivergence a = {
            .head = {.rows = R,
                     .channels = V,
                     .vocab = V,
                     .padded_vocab = V,
                     .temperature = 1,
                     .h = (const Acts *)divergence_narrow(&c, student, (R + ROW_ALIGN) * V, (R + ROW_ALIGN) * V),
                     .weight = unit,
                     .target = (const Ints *)divergence_words(&c, target, R),
                     .logp = (Floats *)divergence_words(&c, NULL, R),
                     .dh = dh},
            .kind = (TokenDivergenceKind)kind,
            .channels = V,
            .padded_vocab = V,
            .temperature = 1,
            .beta = 0.5f,
            .h = (const Acts *)divergence_narrow(&c, teacher, (R + ROW_ALIGN) * V, (R + ROW_ALIGN) * V),
            .output = unit,
            .value = value,
            .logp = (Floats *)divergence_words(&c, NULL, R),
            .weight = (const Floats *)divergence_words(&c, ones, R)};
        B->divergence(D, &a);
        B->download(D, got, value, sizeof(float) * R);
        assert_true(fabs((double)got[0]) < 1e-6);
        const double apart[] = {400, 400, log(2), 1, log(2), log(2)};
        assert_true(fabs((double)got[1] - apart[kind]) < 1e-4);
        assert_true(isnan(got[2]) && isnan(got[3]));
        B->weights_download(D, got, (const Weights *)dh, R * V);
        for (int v = 0; v < 2 * V; v++) assert_true(isfinite(got[v]));
        divergence_free(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formulas), cmocka_unit_test(test_sampled_estimate), cmocka_unit_test(test_float32),
        cmocka_unit_test(test_bf16),     cmocka_unit_test(test_chunks),           cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_trl),      cmocka_unit_test(test_extremes),
    };
    return cmocka_run_group_tests_name("divergence", tests, open_device, close_device);
}
