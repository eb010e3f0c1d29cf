/* test_advantage.c - the advantages of advantage_estimators.h: all subsets of a group, and the formulas in another form. */
#include "../llmc/base/random.h"               /* Random, random_below, random_start, random_real */
#include "../llmc/loss/advantage.h"            /* AdvantageStats */
#include "../llmc/loss/advantage_estimators.h" /* ADVANTAGE_PASS_K, advantage_estimate, advantage_takes, ... */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { P = 3, G = 6 };

static void near(double a, double b) {
    if (!(fabs(a - b) <= 1e-5 * fmax(1, fabs(b)))) fail_msg("%.9g is not %.9g", a, b);
}

/* The advantage of a completion is the mean over all subsets of k that hold it. */
static void pass_k_is_the_mean_over_subsets(void **state) {
    (void)state;
    Random random = random_start(2, 0);
    for (int trial = 0; trial < 200; trial++) {
        float reward[G], advantage[G];
        const int k = 1 + trial % G;
        AdvantageStats stats;
        for (int i = 0; i < G; i++) reward[i] = (float)random_below(&random, 2);
        advantage_estimate(ADVANTAGE_PASS_K, reward, NULL, 1, G, k, advantage, &stats);
        double all = 0, subsets = 0, sum[G] = {0}, count[G] = {0};
        for (int pass = 0; pass < 2; pass++)
            for (unsigned set = 0; set < 1u << G; set++) {
                if (__builtin_popcount(set) != k) continue;
                double best = 0;
                for (int i = 0; i < G; i++) best = set >> i & 1 && reward[i] > best ? reward[i] : best;
                if (!pass) all += best, subsets++;
                const double R = all / subsets, s = sqrt(R * (1 - R));
                for (int i = 0; pass && i < G; i++) {
                    if (!(set >> i & 1)) continue;
                    sum[i] += s > 0 ? (best - R) / s : 0;
                    count[i]++;
                }
            }
        for (int i = 0; i < G; i++) near(advantage[i], sum[i] / count[i]);
    }
}

static void others_are_their_formulas(void **state) {
    (void)state;
    Random random = random_start(3, 0);
    for (int trial = 0; trial < 100; trial++) {
        float reward[P * G], A[P * G];
        int32_t offset[P * G + 1] = {0};
        AdvantageStats stats;
        for (int i = 0; i < P * G; i++) {
            reward[i] = i / G == 1 ? 0.5f : (float)random_real(&random); /* the second group's are equal */
            offset[i + 1] = offset[i] + 1 + (int32_t)random_below(&random, 9);
        }
        for (int kind = ADVANTAGE_MAX_RL; kind <= ADVANTAGE_GPG; kind++) {
            if (kind == ADVANTAGE_PASS_K) continue;
            advantage_estimate((AdvantageEstimator)kind, reward, offset, P, G, 0, A, &stats);
            near(stats.frac_reward_zero_std, 1.0 / P);
            for (int g = 0; g < P; g++) {
                const float *r = reward + g * G;
                double mean = 0, weighted = 0, tokens = 0, squares = 0;
                int best = 0;
                for (int i = 0; i < G; i++) {
                    const int T = offset[g * G + i + 1] - offset[g * G + i];
                    mean += r[i] / (double)G;
                    weighted += T * (double)r[i];
                    tokens += T;
                    best = r[i] > r[best] ? i : best;
                }
                for (int i = 0; i < G; i++) squares += (r[i] - mean) * (r[i] - mean);
                double second = 0;
                for (int i = 0; i < G; i++) second = i != best && r[i] > second ? r[i] : second;
                for (int i = 0; i < G; i++) {
                    const double want = kind == ADVANTAGE_MAX_RL ? r[i] / mean - 1
                                        : kind == ADVANTAGE_OPO  ? r[i] - weighted / tokens
                                        : kind == ADVANTAGE_GPG  ? 1.5 * (r[i] - mean)
                                        : i == best              ? (r[i] - second) / (sqrt(squares / (G - 1)) + 1e-6)
                                                                 : 0;
                    near(A[g * G + i], want);
                }
            }
        }
    }
}

/* Completions without a score change nothing, and have no advantage; neither have groups without a right answer. */
static void unscored_completions(void **state) {
    (void)state;
    const float reward[] = {1, NAN, 0, 1, 0, NAN}, fewer[] = {1, 0, 1, 0}, zeros[4] = {0};
    const int32_t offset[] = {0, 3, 9, 10, 14, 15, 20}, shorter[] = {0, 3, 4, 8, 9};
    const int of[] = {0, 2, 3, 4};
    float A[6], B[4];
    AdvantageStats stats;
    for (int kind = ADVANTAGE_MAX_RL; kind <= ADVANTAGE_GPG; kind++) {
        advantage_estimate((AdvantageEstimator)kind, reward, offset, 1, 6, 2, A, &stats);
        advantage_estimate((AdvantageEstimator)kind, fewer, shorter, 1, 4, 2, B, &stats);
        assert_true(A[1] == 0 && A[5] == 0);
        for (int i = 0; i < 4; i++) near(A[of[i]], B[i]);
        advantage_estimate((AdvantageEstimator)kind, zeros, shorter, 1, 4, 2, B, &stats);
        for (int i = 0; i < 4; i++) assert_true(B[i] == 0);
    }
    assert_false(advantage_takes(ADVANTAGE_MAX_RL, -0.5f));
    assert_false(advantage_takes(ADVANTAGE_PASS_K, 0.5f));
    assert_true(advantage_takes(ADVANTAGE_PASS_K, 1) && advantage_takes(ADVANTAGE_PASS_K, NAN));
    assert_true(advantage_takes(ADVANTAGE_OPO, -3));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(pass_k_is_the_mean_over_subsets),
                                       cmocka_unit_test(others_are_their_formulas),
                                       cmocka_unit_test(unscored_completions)};
    return cmocka_run_group_tests_name("advantage", tests, NULL, NULL);
}
