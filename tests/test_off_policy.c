/* test_off_policy.c - demonstrations among the completions of a group: the loss (loss/off_policy.h, loss/policy.h) and the
 * advantages against values from LUFFY's code (golden/off_policy.txt, written by dev/golden/golden_off_policy.py), and
 * against central differences. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/options.h"        /* option_choice_index */
#include "../llmc/base/random.h"         /* random_real, Random, random_normal, random_start */
#include "../llmc/loss/advantage.h"      /* AdvantageStats, SCALE_NONE, advantage_group */
#include "../llmc/loss/clip_histogram.h" /* clip_histogram_policy, ClipHistogram, clip_histogram */
#include "../llmc/loss/off_policy.h"     /* OFF_POLICY_RESHAPE_CHOICES, off_policy_default, off_policy_ratio, ... */
#include "../llmc/loss/policy.h"         /* PolicyBatch, PolicyLossConfig, policy_loss_config, ... */
#include "../llmc/loss/scalar.h"         /* LossMetric */
#include "golden.h"                      /* check_near, golden, golden_floats, Golden, ... */

enum { MOST_TOKENS = 64, MOST_COMPLETIONS = 16 };

/* The value of a metric of policy_metrics(); NaN if there is none. */
static double metric_of(const PolicyLossConfig *c, const PolicyStats *s, const char *name) {
    LossMetric metric[POLICY_METRICS];
    const int n = policy_metrics(c, s, metric);
    for (int i = 0; i < n; i++)
        if (!strcmp(metric[i].name, name)) return metric[i].value;
    return NAN;
}

/* LUFFY divides the sum of the tokens' losses by their number, as dapo and bnpo do, or by a constant: dr_grpo divides by the
 * number of completions, too. */
static void test_loss_golden(void **state) {
    (void)state;
    FILE *f = golden_open("off_policy.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "loss")) continue;
        const int n = golden_count(&g, "length");
        const double *config = golden(&g, "config"), *expected = golden(&g, "dlogp"), *off = golden(&g, "off_policy");
        int32_t offset[MOST_COMPLETIONS] = {0};
        uint8_t off_policy[MOST_COMPLETIONS];
        assert_true(n < MOST_COMPLETIONS);
        for (int i = 0; i < n; i++) {
            offset[i + 1] = offset[i] + (int32_t)golden(&g, "length")[i];
            off_policy[i] = off[i] != 0;
        }
        assert_true(offset[n] <= MOST_TOKENS);
        PolicyLossConfig c = policy_loss_config(config[2] > 0 ? POLICY_DR_GRPO : POLICY_DAPO);
        c.off_policy.reshape = option_choice_index(OFF_POLICY_RESHAPE_CHOICES, g.family);
        c.off_policy.gamma = config[0];
        c.epsilon = c.epsilon_high = config[1];
        if (config[2] > 0) c.max_completion_length = config[2];
        const double factor = config[2] > 0 ? n : 1;
        float *advantage = golden_floats(&g, "advantage"), *logp = golden_floats(&g, "logp"),
              *old = golden_floats(&g, "old"), dlogp[MOST_TOKENS];
        const PolicyBatch b = {.completions = n,
                               .offset = offset,
                               .advantage = advantage,
                               .logp = logp,
                               .old_logp = old,
                               .off_policy = off_policy};
        const PolicyNormaliser all = policy_normaliser(offset, n, NULL, NULL);
        PolicyStats stats = policy_stats();
        check_near(factor * policy_loss(&c, &all, &b, dlogp, NULL, &stats), *golden(&g, "loss"), 1e-3, 1e-6, g.name);
        for (int t = 0; t < offset[n]; t++)
            check_near(factor * dlogp[t], expected[t], largest(expected, offset[n]) * 0.1, 1e-6, g.name);
        check_near(metric_of(&c, &stats, "off_policy/ratio_mean"), *golden(&g, "ratio_mean"), 0.01, 1e-6, g.name);
        check_near(metric_of(&c, &stats, "off_policy/prob"), *golden(&g, "prob"), 0.01, 1e-6, g.name);
        free(advantage), free(logp), free(old);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 8);
}

/* The demonstration's reward is in the mean of its group. */
static void test_advantage_golden(void **state) {
    (void)state;
    FILE *f = golden_open("off_policy.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "advantage")) continue;
        const int n = golden_count(&g, "reward"), G = (int)*golden(&g, "group");
        float *reward = golden_floats(&g, "reward"), A[MOST_COMPLETIONS];
        AdvantageStats stats;
        assert_true(n <= MOST_COMPLETIONS);
        advantage_group(reward, n / G, G, SCALE_NONE, A, &stats);
        for (int i = 0; i < n; i++) check_near(A[i], golden(&g, "advantage")[i], 0.1, 1e-6, g.name);
        free(reward);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 1);
}

/* f(p) at known points, and the place of its largest slope. */
static void test_ratio(void **state) {
    (void)state;
    const OffPolicy shaped = off_policy_default(), plain = {OFF_POLICY_NO_RESHAPE, 0.1};
    double slope;
    check_near(off_policy_ratio(&shaped, log(0.1), &slope), 0.5, 0, 1e-12, "f(gamma)");
    check_near(slope, 0.25, 0, 1e-12, "slope at gamma");
    check_near(off_policy_ratio(&shaped, 0, &slope), 1 / 1.1, 0, 1e-12, "f(1)");
    assert_true(off_policy_ratio(&shaped, -1e4, &slope) == 0 && slope == 0);
    for (int i = -40; i <= 40; i++) {
        off_policy_ratio(&shaped, log(0.1) + i / 10.0, &slope);
        assert_true(i ? slope < 0.25 : fabs(slope - 0.25) < 1e-12);
    }
    check_near(off_policy_ratio(&plain, log(0.3), &slope), 0.3, 0, 1e-12, "no_reshape");
    check_near(slope, 0.3, 0, 1e-12, "slope of no_reshape");
}

enum { N = 6, T = 4 };

typedef struct Mixed {
    int32_t offset[N + 1];
    float advantage[N], logp[N * T], old[N * T], ref[N * T], entropy[N * T];
    uint8_t off_policy[N], counts[N];
    PolicyBatch batch;
} Mixed;

/* Completions of which each third is a demonstration; the last one does not count. */
static void mixed_make(Mixed *m, uint64_t seed) {
    Random r = random_start(seed, 0);
    for (int i = 0; i <= N; i++) m->offset[i] = i * T;
    for (int i = 0; i < N; i++) {
        m->advantage[i] = (float)random_normal(&r);
        m->off_policy[i] = i % 3 == 2;
        m->counts[i] = i < N - 1;
    }
    for (int t = 0; t < N * T; t++) {
        m->logp[t] = (float)(-4 * random_real(&r) - 0.1);
        m->old[t] = (float)(m->logp[t] + 0.1 * random_normal(&r));
        m->ref[t] = (float)(m->logp[t] + 0.3 * random_normal(&r));
        m->entropy[t] = (float)random_real(&r);
    }
    m->batch = (PolicyBatch){.completions = N,
                             .offset = m->offset,
                             .advantage = m->advantage,
                             .counts = m->counts,
                             .logp = m->logp,
                             .old_logp = m->old,
                             .ref_logp = m->ref,
                             .entropy = m->entropy,
                             .off_policy = m->off_policy};
}

/* With every loss: the gradient of demonstrations is the slope of the loss, with a KL term and an entropy bonus; that of the
 * other completions is what it is when the demonstrations do not count, up to the normaliser, which is the same here; the parts
 * of micro-batches add up. The differences of a step of 1/64 have an error of h^2/6 f''' < 1e-4 of the largest slope. */
static void test_gradient(void **state) {
    (void)state;
    static Mixed m;
    mixed_make(&m, 7);
    for (int loss = POLICY_GRPO; loss <= POLICY_DPPO; loss++) {
        PolicyLossConfig c = policy_loss_config((PolicyLossKind)loss);
        c.beta = 0.1;
        c.entropy_coef = 0.05;
        const PolicyNormaliser all = policy_normaliser(m.offset, N, m.counts, NULL);
        float dlogp[N * T], dentropy[N * T], part[N * T], unused[N * T], less[N * T];
        PolicyStats stats = policy_stats(), ignored = policy_stats();
        const double whole = policy_loss(&c, &all, &m.batch, dlogp, dentropy, &stats);
        for (int t = 2 * T; t < 3 * T; t++) { /* the demonstration that counts */
            double side[2];
            const float at = m.logp[t];
            for (int k = 0; k < 2; k++) {
                m.logp[t] = at + (k ? 1 : -1) / 64.0f;
                side[k] = policy_loss(&c, &all, &m.batch, unused, part, &ignored);
            }
            m.logp[t] = at;
            check_near(dlogp[t], 32 * (side[1] - side[0]), 0.05, 2e-4, "slope");
            check_near(dentropy[t], -0.05 / all.kept_tokens, 0, 1e-6, "entropy");
        }
        for (int t = 5 * T; t < N * T; t++) assert_true(dlogp[t] == 0 && dentropy[t] == 0);
        assert_true(stats.sum.off_tokens == T && stats.sum.tokens == 4 * T && stats.sum.counted == 4);
        uint8_t counts[N] = {1, 1, 0, 1, 1, 0};
        PolicyBatch sampled = m.batch;
        sampled.counts = counts;
        sampled.off_policy = NULL;
        policy_loss(&c, &all, &sampled, less, unused, &ignored);
        assert_memory_equal(less, dlogp, 2 * T * sizeof *less);
        assert_memory_equal(less + 3 * T, dlogp + 3 * T, 2 * T * sizeof *less);
        double sum = 0;
        for (int i = 0; i < N; i += 2) {
            PolicyBatch b = m.batch;
            b.completions = 2;
            b.offset += i, b.advantage += i, b.counts += i, b.off_policy += i;
            sum += policy_loss(&c, &all, &b, part, unused, &ignored);
        }
        check_near(sum, whole, 0, 1e-12, "parts");
        assert_memory_equal(part, dlogp, sizeof part);
    }
}

/* Without demonstrations nothing changes, and neither ratios nor clips of the metrics see their tokens. */
static void test_metrics(void **state) {
    (void)state;
    static Mixed m;
    mixed_make(&m, 8);
    const uint8_t none[N] = {0};
    PolicyLossConfig c = policy_loss_config(POLICY_DAPO);
    const PolicyNormaliser all = policy_normaliser(m.offset, N, m.counts, NULL);
    PolicyBatch without = m.batch, zero = m.batch;
    without.off_policy = NULL;
    zero.off_policy = none;
    float a[N * T], b[N * T];
    PolicyStats s[2] = {policy_stats(), policy_stats()}, mixed = policy_stats();
    const double first = policy_loss(&c, &all, &without, a, NULL, &s[0]);
    assert_true(first == policy_loss(&c, &all, &zero, b, NULL, &s[1]));
    assert_memory_equal(a, b, sizeof a);
    assert_memory_equal(&s[0], &s[1], sizeof s[0]);
    assert_true(isnan(metric_of(&c, &s[0], "off_policy/tokens")));
    for (int t = 2 * T; t < 3 * T; t++) m.old[t] = m.logp[t] - 5; /* a ratio of e^5, if it were one */
    policy_loss(&c, &all, &m.batch, a, NULL, &mixed);
    assert_true(mixed.max.ratio < 2);
    check_near(metric_of(&c, &mixed, "off_policy/tokens"), 1.0 / 5, 0, 1e-12, "fraction of the tokens");
    ClipHistogram h = clip_histogram(log(0.8), log(1.2));
    double tokens = 0;
    clip_histogram_policy(&h, &c, &m.batch);
    for (int bin = 0; bin < CLIP_BINS; bin++)
        for (int row = 0; row < CLIP_ROWS; row++) tokens += h.sum.count[row][bin];
    assert_true(tokens == 4 * T);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_golden), cmocka_unit_test(test_advantage_golden), cmocka_unit_test(test_ratio),
        cmocka_unit_test(test_gradient),    cmocka_unit_test(test_metrics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
