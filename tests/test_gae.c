/* test_gae.c - advantages against golden values from the papers' equations (dev/golden/golden_ppo.py), published
 * anchors and closed forms.
 *
 * Rewards, returns and advantages are sums in double that are stored as float, so they are off by 2^-24 = 6e-8 of their
 * size, which is at most about 20 here: 1e-6, and 2e-6 or 3e-6 if a result is the difference of two of them. Baselines
 * are of order 1 to 10: 1e-6. What is computed in double alone agrees to 1e-9 or better. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/random.h"             /* random_normal, Random, random_start, random_below */
#include "../llmc/loss/advantage.h"          /* AdvantageStats, advantage_rloo */
#include "../llmc/loss/gae.h"                /* gae, explained_variance, mean_baseline, gae_length_lambda, ... */
#include "../llmc/loss/kl.h"                 /* KlEstimator, KL_K1 */
#include "../llmc/loss/kl_control.h"         /* kl_control_update, KlControl, KL_ADAPTIVE, KL_FIXED */
#include "../llmc/report/overoptimisation.h" /* gao_fit, GaoFit */
#include "golden.h"                          /* golden, Golden, golden_floats, golden_count, ... */

static void assert_near(double x, double expected, double tolerance) {
    if (!(fabs(x - expected) <= tolerance)) fail_msg("%.9g, expected %.9g", x, expected);
}

typedef struct Answers {
    int32_t n, offset[17];
    uint8_t counts[16];
} Answers;

static Answers answers_of(const Golden *g) {
    Answers a = {0};
    a.n = golden_offsets(g, "lengths", a.offset, 17, 64);
    for (int i = 0; i < a.n; i++) a.counts[i] = (uint8_t)golden(g, "counts")[i];
    return a;
}

static void assert_all(const Golden *g, const char *key, const float *x, int n, double tolerance) {
    const double *expected = golden(g, key);
    assert_int_equal(golden_count(g, key), n);
    for (int i = 0; i < n; i++)
        if (!(fabs(x[i] - expected[i]) <= tolerance * fmax(1, fabs(expected[i]))))
            fail_msg("%s: %s[%d] is %.9g, expected %.9g", g->name, key, i, x[i], expected[i]);
}

static void golden_gae(const Golden *g) {
    const Answers a = answers_of(g);
    const double *settings = golden(g, "settings");
    const KlEstimator kind = (KlEstimator)golden(g, "estimator")[0];
    float *logp = golden_floats(g, "logp"), *ref = golden_floats(g, "ref_logp"), *value = golden_floats(g, "value");
    float reward[64], advantage[64], to_go[64];
    for (int i = 0; i < a.n; i++) {
        const int32_t at = a.offset[i], n = a.offset[i + 1] - at;
        const double kl = token_rewards(kind, logp + at, ref + at, n, settings[0], golden(g, "score")[i], reward + at);
        assert_near(kl, golden(g, "kl")[i], 1e-6 * fmax(1, fabs(kl)));
        gae(reward + at, value + at, n, settings[1], settings[2], advantage + at);
        const double R = returns_to_go(reward + at, n, settings[1], to_go + at);
        assert_near(R, to_go[at], 1e-6 * fmax(1, fabs(R)));
    }
    assert_all(g, "reward", reward, a.offset[a.n], 1e-6);
    assert_all(g, "advantage", advantage, a.offset[a.n], 2e-6);
    assert_all(g, "to_go", to_go, a.offset[a.n], 2e-6);
    free(logp), free(ref), free(value);
}

static void golden_whiten(const Golden *g) {
    const Answers a = answers_of(g);
    float *x = golden_floats(g, "x");
    whiten(x, a.offset, a.n, a.counts, golden(g, "shift")[0] != 0);
    assert_all(g, "y", x, a.offset[a.n], 1e-6);
    free(x);
}

static void golden_values(void **state) {
    (void)state;
    Golden g;
    int seen = 0;
    FILE *f = golden_open("ppo.txt");
    for (; golden_next(f, &g); golden_free(&g)) {
        if (!strcmp(g.kind, "gae")) {
            golden_gae(&g);
            seen++;
        }
        if (!strcmp(g.kind, "whiten")) {
            golden_whiten(&g);
            seen++;
        }
    }
    fclose(f);
    assert_int_equal(seen, 18 + 6);
}

/* The drawn ones of n values. */
static int drawn_only(const float *x, const double *drawn, int n, float *to) {
    int count = 0;
    for (int i = 0; i < n; i++)
        if (drawn[i]) to[count++] = x[i];
    return count;
}

/* Observed tokens are no steps: GAE of the drawn tokens alone is verl's GAE over both (dev/golden/golden_masked_gae.py). */
static void golden_masked(void **state) {
    (void)state;
    Golden g;
    int seen = 0;
    FILE *f = golden_open("masked_gae.txt");
    for (; golden_next(f, &g); golden_free(&g), seen++) {
        int32_t all[17], offset[17] = {0};
        const int n = golden_offsets(&g, "lengths", all, 17, 64);
        const double *settings = golden(&g, "settings"), *drawn = golden(&g, "drawn");
        static const uint8_t counts[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
        float *reward = golden_floats(&g, "reward"), *value = golden_floats(&g, "value");
        float r[64], v[64], advantage[64], returns[64];
        for (int i = 0; i < n; i++) {
            const int32_t from = all[i], length = all[i + 1] - from, at = offset[i];
            const int count = drawn_only(reward + from, drawn + from, length, r + at);
            drawn_only(value + from, drawn + from, length, v + at);
            offset[i + 1] = at + count;
            gae(r + at, v + at, count, settings[0], settings[1], advantage + at);
            for (int t = at; t < offset[i + 1]; t++) returns[t] = advantage[t] + v[t];
        }
        assert_all(&g, "returns", returns, offset[n], 2e-6);
        whiten(advantage, offset, n, counts, true);
        assert_all(&g, "advantage", advantage, offset[n], 2e-6);
        free(reward), free(value);
    }
    fclose(f);
    assert_int_equal(seen, 6);
}

/* The table of "The N Implementation Details of RLHF with PPO" (Huang et al.), with the sample variance. */
static void whitening_of_the_n_details(void **state) {
    (void)state;
    static const double expected[9] = {.1394, .5046, .8697, 1.2349, 1.6, 1.9651, 2.3303, 2.6954, 3.0606};
    float x[9] = {1.2f, 1.3f, 1.4f, 1.5f, 1.6f, 1.7f, 1.8f, 1.9f, 2.0f};
    const int32_t offset[] = {0, 3, 6, 9};
    const uint8_t counts[] = {1, 1, 1};
    whiten(x, offset, 3, counts, false);
    for (int i = 0; i < 9; i++) assert_near(x[i], expected[i], 5e-5);
}

static void closed_forms(void **state) {
    (void)state;
    enum { N = 11 };
    Random random = random_start(3, 1);
    float r[N], V[N], A[N], G[N], delta[N];
    for (int i = 0; i < N; i++) {
        r[i] = (float)random_normal(&random);
        V[i] = (float)random_normal(&random);
    }
    gae(r, V, N, 1, 1, A); /* lambda = gamma = 1: the return minus the value */
    const double R = returns_to_go(r, N, 1, G);
    for (int i = 0; i < N; i++) assert_near(A[i], (double)G[i] - V[i], 3e-6);
    double sum = 0;
    for (int i = 0; i < N; i++) sum += r[i];
    assert_near(R, sum, 1e-6);
    gae(r, V, N, 0.9, 0, delta); /* lambda = 0: the one-step error */
    for (int i = 0; i < N; i++) assert_near(delta[i], r[i] + 0.9 * (i + 1 < N ? V[i + 1] : 0) - V[i], 1e-6);
    gae(r, G, N, 1, 0.37, A); /* exact values: no advantage for any lambda */
    for (int i = 0; i < N; i++) assert_near(A[i], 0, 3e-6);
    assert_near(gae_length_lambda(0.95, 0, 5), 0.95, 0);
    assert_near(gae_length_lambda(0.95, 0.05, 100), 0.8, 1e-12); /* 1 - 1 / (0.05 * 100) */
    assert_near(gae_length_lambda(0.95, 0.05, 3), 0, 0);
    /* the score is on the last token only */
    token_rewards(KL_K1, V, NULL, N, 0.3, 2, r);
    for (int i = 0; i < N; i++) assert_near(r[i], i == N - 1 ? 2 : 0, 0);
}

static void baselines(void **state) {
    (void)state;
    const float R[] = {1, 2, 4, 5, 9, 7};
    const uint8_t all[] = {1, 1, 1, 1, 1, 1}, some[] = {1, 1, 0, 1, 0, 0};
    float b[6];
    mean_baseline(R, all, 6, 6, false, b);
    assert_near(b[0], 27.0 / 5, 1e-6);
    assert_near(b[4], 19.0 / 5, 1e-6);
    mean_baseline(R, all, 6, 3, true, b);
    assert_near(b[1], 7.0 / 3, 1e-6);
    assert_near(b[3], 7, 0);
    mean_baseline(R, some, 6, 3, true, b);
    assert_near(b[0], 1.5, 0);
    assert_near(b[2], 4, 0); /* a reward that does not count uses its own value */
    assert_near(b[3], 5, 0); /* and so does one that is alone in its group */
    /* leave-one-out within a group is RLOO's advantage, G / (G - 1) times the difference from the mean */
    float rloo[6];
    AdvantageStats stats;
    mean_baseline(R, all, 6, 3, false, b);
    advantage_rloo(R, 2, 3, false, rloo, &stats);
    for (int i = 0; i < 6; i++) assert_near(R[i] - b[i], rloo[i], 1e-6);
}

static void how_much_a_critic_explains(void **state) {
    (void)state;
    const float G[] = {1, 2, 3, 4, 100}, right[] = {1, 2, 3, 4, 0}, shifted[] = {6, 7, 8, 9, 0},
                flat[] = {2, 2, 2, 2, 0}, same[] = {1, 1, 1, 1, 0};
    const int32_t offset[] = {0, 3, 4, 5};
    const uint8_t counts[] = {1, 1, 0};
    assert_near(explained_variance(right, G, offset, 3, counts), 1, 0);
    assert_near(explained_variance(shifted, G, offset, 3, counts), 1, 0); /* a constant error has no variance */
    assert_near(explained_variance(flat, G, offset, 3, counts), 0, 0);
    assert_true(isnan(explained_variance(right, same, offset, 3, counts)));
}

/* Ziegler et al. 2019: the error is clipped to a fifth; 512 answers, horizon 10000. */
static void the_leash(void **state) {
    (void)state;
    KlControl c = {KL_ADAPTIVE, 6, 10000, 0.15};
    kl_control_update(&c, 6, 512);
    assert_near(c.coef, 0.15, 0);
    kl_control_update(&c, 60, 512);
    assert_near(c.coef, 0.15 * (1 + 0.2 * 0.0512), 1e-15);
    c.coef = 0.15;
    kl_control_update(&c, 0, 512);
    assert_near(c.coef, 0.15 * (1 - 0.2 * 0.0512), 1e-15);
    c.coef = 0.15;
    kl_control_update(&c, 6.6, 512);
    assert_near(c.coef, 0.15 * (1 + 0.1 * 0.0512), 1e-15);
    kl_control_update(&c, NAN, 512);
    assert_near(c.coef, 0.15 * (1 + 0.1 * 0.0512), 1e-15);
    KlControl fixed = {KL_FIXED, 6, 10000, 0.15};
    kl_control_update(&fixed, 600, 512);
    assert_near(fixed.coef, 0.15, 0);
    /* if KL = 1 / beta, the target is reached and kept */
    c = (KlControl){KL_ADAPTIVE, 4, 10, 1};
    for (int i = 0; i < 1000; i++) kl_control_update(&c, 1 / c.coef, 1);
    assert_near(1 / c.coef, 4, 1e-6);
}

static void the_curve_of_overoptimisation(void **state) {
    (void)state;
    enum { N = 60 };
    Random random = random_start(5, 1);
    double d[N], R[N];
    for (int i = 0; i < N; i++) {
        d[i] = 0.2 * i;
        R[i] = 0.5 + (i ? d[i] * (1.4 - 0.7 * log(d[i])) : 0);
    }
    GaoFit f = gao_fit(d, R, N);
    assert_true(f.good);
    assert_near(f.R0, 0.5, 1e-9);
    assert_near(f.alpha, 1.4, 1e-9);
    assert_near(f.beta, 0.7, 1e-9);
    assert_near(f.peak, M_E, 1e-6);
    assert_near(f.value, 0.5 + 0.7 * M_E, 1e-9);
    assert_near(f.r2, 1, 1e-9);
    for (int i = 0; i < N; i++) R[i] += 0.05 * random_normal(&random);
    R[7] = NAN;
    d[9] = NAN; /* ignored by the fit */
    f = gao_fit(d, R, N);
    assert_near(f.alpha, 1.4, 0.1);
    assert_near(f.beta, 0.7, 0.05);
    for (int i = 0; i < N; i++) { /* no overoptimisation: the peak is the last point */
        d[i] = 0.2 * i;
        R[i] = d[i];
    }
    f = gao_fit(d, R, N);
    assert_near(f.peak, d[N - 1], 1e-9);
    assert_near(f.beta, 0, 1e-9);
    for (int i = 0; i < N; i++) d[i] = 1; /* the policy never moved */
    assert_false(gao_fit(d, R, N).good);
    assert_false(gao_fit(d, R, 7).good);
}

/* GAE on two levels: the example in RAGEN's core_algos.py, whose function gives these values before whitening, the same with
 * other settings; and random turns against the two passes of the formula in double. */
static void two_levels(void **state) {
    (void)state;
    enum { N = 60 };
    static const double wanted[2][10] = {{1.85, 1.75, 1.65, 1.55, 1.45, 0.4, 0.3, 0.2, 0.1, 0},
                                         {0.569837312, 0.6803296, 0.84768, 1.094, 1.45, 0.049584, 0.0272, 0.01, 0, 0}};
    float reward[N] = {[4] = 1, [9] = 1}, value[N], A[N];
    int32_t turn[N] = {0, 0, 0, 0, 0, 1, 1, 1, 1, 1};
    for (int t = 0; t < 10; t++) value[t] = 0.1f * (float)(t + 1);
    for (int k = 0; k < 2; k++) {
        gae_turns(reward, value, turn, 10, k ? 0.9 : 1, k ? 0.8 : 1, 0.95, A);
        for (int t = 0; t < 10; t++) assert_near(A[t], wanted[k][t], 1e-6);
    }
    Random r = random_start(3, 0);
    const double gamma = 0.97, lambda = 0.9, high = 0.8;
    int end[N], turns = 0;
    for (int t = 0; t < N; t++) {
        reward[t] = (float)random_normal(&r);
        value[t] = (float)random_normal(&r);
        turn[t] = 3 * turns; /* a turn may have no token */
        if (t == N - 1 || random_below(&r, 5) == 0) end[turns++] = t;
    }
    gae_turns(reward, value, turn, N, gamma, lambda, high, A);
    double of_turn[N], last = 0;
    for (int k = turns - 1; k >= 0; k--) {
        const double next = k + 1 < turns ? value[end[k + 1]] : 0;
        last = reward[end[k]] + high * next - value[end[k]] + high * lambda * last;
        of_turn[k] = last;
    }
    for (int k = 0; k < turns; k++)
        for (int t = k ? end[k - 1] + 1 : 0; t <= end[k]; t++) {
            double sum = 0, weight = 1;
            for (int l = t; l <= end[k]; l++, weight *= gamma * lambda)
                sum += weight * (l < end[k] ? reward[l] + gamma * value[l + 1] - value[l] : of_turn[k]);
            assert_near(A[t], sum, 1e-5);
        }
    /* a single turn is GAE */
    float plain[N];
    memset(turn, 0, sizeof turn);
    gae(reward, value, N, gamma, lambda, plain);
    gae_turns(reward, value, turn, N, gamma, lambda, 0.5, A);
    for (int t = 0; t < N; t++) assert_near(A[t], plain[t], 1e-5);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_values),
                                       cmocka_unit_test(golden_masked),
                                       cmocka_unit_test(whitening_of_the_n_details),
                                       cmocka_unit_test(closed_forms),
                                       cmocka_unit_test(two_levels),
                                       cmocka_unit_test(baselines),
                                       cmocka_unit_test(how_much_a_critic_explains),
                                       cmocka_unit_test(the_leash),
                                       cmocka_unit_test(the_curve_of_overoptimisation)};
    return cmocka_run_group_tests_name("gae", tests, NULL, NULL);
}
