/* test_random.c - random.h against the published known answers of Philox4x32-10, and its distributions against their
 * formulas. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/random.h" /* random_bits, Random, random_start, random_shuffle, ... */
#include <string.h>

/* Random123 1.14, tests/kat_vectors, lines "philox4x32 10": counter, key, expected (Salmon et al. 2011). */
static void test_known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } vector[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof vector / sizeof *vector; i++) {
        uint32_t c[4];
        memcpy(c, vector[i].counter, sizeof c);
        philox4x32(c, vector[i].key[0], vector[i].key[1]);
        assert_memory_equal(c, vector[i].expected, sizeof c);
    }
}

/* The layout of (seed, stream, index) in key and counter must not change: every run's reproducibility depends on it. */
static void test_layout(void **state) {
    (void)state;
    assert_true(random_bits(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88) == 0x94fdccebd16cfe09);
    assert_true(random_bits(0, 0, 0) == 0xe169c58d6627e8d5);
    Random r = random_start(7, RANDOM_TASK + 3);
    for (uint64_t i = 0; i < 5; i++) assert_true(random_next(&r) == random_bits(7, RANDOM_TASK + 3, i));
    assert_true(r.index == 5); /* the counter is all that a resumed run needs */
}

static void test_streams_differ(void **state) {
    (void)state;
    static const uint64_t stream[] = {RANDOM_INIT,    RANDOM_SHUFFLE, RANDOM_NOISE, RANDOM_TASK,
                                      RANDOM_ROLLOUT, RANDOM_EVAL,    RANDOM_REWARD};
    for (size_t i = 0; i < sizeof stream / sizeof *stream; i++) {
        assert_true(stream[i] >= (uint64_t)1 << 56);
        for (size_t j = 0; j < i; j++) {
            assert_true(stream[i] != stream[j]);
            assert_true(random_bits(1, stream[i], 0) != random_bits(1, stream[j], 0));
        }
    }
    assert_true(random_bits(1, 2, 3) != random_bits(2, 2, 3));
    assert_true(random_bits(1, 2, 3) != random_bits(1, 3, 2));
    assert_true(random_bits(1, 2, 3) != random_bits(1, 2, (uint64_t)3 << 32 | 3));
}

/* (chi2 - df) / sqrt(2 df) of counts against equal expectations: approximately standard normal. */
static double chi_square(const int *count, int cells, double expected) {
    double chi = 0;
    for (int i = 0; i < cells; i++) chi += (count[i] - expected) * (count[i] - expected) / expected;
    return (chi - (cells - 1)) / sqrt(2.0 * (cells - 1));
}

static void test_uniform(void **state) {
    (void)state;
    enum { N = 200000, CELLS = 100 };
    int count[CELLS] = {0}, pair[CELLS] = {0};
    double sum = 0, squares = 0;
    float before = 0;
    for (int i = 0; i < N; i++) { /* as a rollout draws: adjacent streams, small indices */
        const float u = random_uniform(1234, (uint64_t)(i / 50), (uint64_t)(i % 50));
        assert_true(u >= 0 && u < 1 && u * 0x1p24f == floorf(u * 0x1p24f));
        count[(int)(u * CELLS)]++;
        if (i & 1) pair[(int)(before * 10) * 10 + (int)(u * 10)]++; /* adjacent streams are independent */
        before = u;
        sum += u;
        squares += (double)u * u;
    }
    assert_true(fabs(chi_square(count, CELLS, N / (double)CELLS)) < 4);
    assert_true(fabs(chi_square(pair, CELLS, N / 2.0 / CELLS)) < 4);
    assert_true(fabs(sum / N - 0.5) < 5 * sqrt(1 / 12.0 / N));
    assert_true(fabs(squares / N - 1 / 3.0) < 5 * sqrt(4 / 45.0 / N));
}

static void test_real(void **state) {
    (void)state;
    Random r = random_start(5, 5);
    double least = 1, most = 0;
    for (int i = 0; i < 100000; i++) {
        const double x = random_real(&r);
        assert_true(x >= 0 && x < 1);
        least = fmin(least, x);
        most = fmax(most, x);
    }
    assert_true(least < 1e-4 && most > 1 - 1e-4);
}

static void test_below(void **state) {
    (void)state;
    Random r = random_start(9, 1);
    static const uint64_t bound[] = {1, 2, 3, 7, 10, 97};
    for (size_t b = 0; b < sizeof bound / sizeof *bound; b++) {
        int count[97] = {0};
        for (int i = 0; i < 50000; i++) {
            const uint64_t x = random_below(&r, bound[b]);
            assert_true(x < bound[b]);
            count[x]++;
        }
        if (bound[b] > 1) assert_true(fabs(chi_square(count, (int)bound[b], 50000.0 / bound[b])) < 4.5);
    }
    const uint64_t huge = 3 * ((uint64_t)1 << 62); /* a quarter of the draws is rejected: no bias between thirds */
    int third[3] = {0};
    for (int i = 0; i < 60000; i++) third[random_below(&r, huge) >> 62]++;
    assert_true(fabs(chi_square(third, 3, 20000)) < 4.5);
    for (int i = 0; i < 1000; i++) {
        const int64_t x = random_between(&r, -3, 4);
        assert_true(x >= -3 && x <= 4);
    }
    assert_true(random_between(&r, 5, 5) == 5);
}

static void test_normal(void **state) {
    (void)state;
    enum { N = 200000, CELLS = 40 };
    Random r = random_start(3, RANDOM_INIT);
    double moment[5] = {0};
    int count[CELLS] = {0};
    for (int i = 0; i < N; i++) {
        const double x = random_normal(&r);
        assert_true(isfinite(x));
        for (int k = 1; k < 5; k++) moment[k] += pow(x, k) / N;
        count[(int)fmin(CELLS - 1,
                        CELLS * 0.5 * erfc(-x / sqrt(2.0)))]++; /* equally likely cells of the distribution */
    }
    assert_true(r.index == 2 * N); /* always two counters per draw */
    assert_true(fabs(moment[1]) < 5 / sqrt(N) && fabs(moment[2] - 1) < 5 * sqrt(2.0 / N));
    assert_true(fabs(moment[3]) < 5 * sqrt(15.0 / N) && fabs(moment[4] - 3) < 5 * sqrt(96.0 / N));
    assert_true(fabs(chi_square(count, CELLS, N / (double)CELLS)) < 4);
}

/* Draws in batches are the same as one after the other, from any counter on, also where its upper word changes. */
static void test_normals(void **state) {
    (void)state;
    static const uint64_t start[] = {0, 3, 0xfffffff0u, UINT64_MAX - 50};
    for (size_t s = 0; s < sizeof start / sizeof *start; s++)
        for (size_t n = 0; n < 100; n += 33) {
            Random one = {0x123456789abcdefu, RANDOM_INIT + 5, start[s]}, many = one;
            float got[100];
            random_normals(&many, 0.02, got, n);
            for (size_t i = 0; i < n; i++) assert_true(got[i] == (float)(0.02 * random_normal(&one)));
            assert_true(many.index == one.index);
        }
}

static void test_shuffle(void **state) {
    (void)state;
    Random r = random_start(11, RANDOM_SHUFFLE);
    int count[24] = {0}; /* the 24 orders of 4 items are equally likely */
    for (int i = 0; i < 48000; i++) {
        int64_t x[4] = {0, 1, 2, 3};
        random_shuffle(&r, x, 4);
        int seen = 0, code = 0;
        for (int k = 0; k < 4; k++) seen |= 1 << x[k];
        assert_int_equal(seen, 15);
        for (int k = 0, base = 6; k < 3; base /= 3 - k, k++) {
            int rank = 0;
            for (int j = k + 1; j < 4; j++) rank += x[j] < x[k];
            code += rank * base;
        }
        count[code]++;
    }
    assert_true(fabs(chi_square(count, 24, 2000)) < 4);
    int64_t one[1] = {42}, a[50], b[50];
    random_shuffle(&r, one, 1);
    random_shuffle(&r, one, 0);
    assert_true(one[0] == 42);
    for (int i = 0; i < 50; i++) a[i] = b[i] = i;
    Random first = random_start(1, RANDOM_SHUFFLE + 2), second = random_start(1, RANDOM_SHUFFLE + 2);
    random_shuffle(&first, a, 50);
    random_shuffle(&second, b, 50);
    assert_memory_equal(a, b, sizeof a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers), cmocka_unit_test(test_layout),  cmocka_unit_test(test_streams_differ),
        cmocka_unit_test(test_uniform),       cmocka_unit_test(test_real),    cmocka_unit_test(test_below),
        cmocka_unit_test(test_normal),        cmocka_unit_test(test_normals), cmocka_unit_test(test_shuffle),
    };
    return cmocka_run_group_tests_name("random", tests, NULL, NULL);
}
