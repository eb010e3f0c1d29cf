/* test_losses_peers.c - losses and advantages that verl and prime-rl have: loss/policy.h and loss/covariance.h against values
 * from their code (golden/losses_peers.txt, written by dev/golden/golden_losses_peers.py), properties of the draw and of the
 * token baseline. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/options.h"              /* option_choice_index */
#include "../llmc/base/random.h"               /* random_real, Random, random_normal, random_start */
#include "../llmc/loss/a2po.h"                 /* a2po_value, a2po_loss, A2poBatch, A2poStats */
#include "../llmc/loss/advantage.h"            /* AdvantageStats, SCALE_GROUP, advantage_group */
#include "../llmc/loss/advantage_estimators.h" /* advantage_filter, advantage_tokens, GROUP_FILTER_LENGTH, ... */
#include "../llmc/loss/covariance.h"           /* covariance_choose, CovarianceStats */
#include "../llmc/loss/policy.h"               /* PolicyBatch, PolicyLossConfig, policy_loss_config, ... */
#include "../llmc/loss/positive_nll.h"         /* positive_nll_add, positive_nll_begin, PositiveBatch, ... */
#include "../llmc/loss/scalar.h"               /* LossMetric */
#include "golden.h"                            /* check_near, golden, golden_floats, Golden, ... */

enum { MOST_TOKENS = 512, MOST_COMPLETIONS = 64 };

static uint64_t ids[MOST_COMPLETIONS]; /* of sequences */

/* ---- losses ---- */

/* Sets the choice of clip_cov to verl's, after checks of ours: all candidates if verl took all, else as many among them. */
static void check_choice(const PolicyLossConfig *c, const Golden *g, PolicyBatch *b, uint8_t *chosen) {
    const double *theirs = golden(g, "chosen");
    const int n = b->offset[b->completions];
    uint8_t all[MOST_TOKENS];
    int64_t count = 0;
    PolicyLossConfig every = *c;
    every.shape.clip_cov_ratio = 1;
    const CovarianceStats s = covariance_choose(c, b, ids, 1, 2, chosen);
    check_near(s.mean, *golden(g, "mean"), 1e-3, 1e-6, "mean covariance");
    assert_true(s.tokens == n);
    b->chosen = chosen;
    if (!theirs) return;
    const int64_t candidates = covariance_choose(&every, b, ids, 1, 2, all).chosen;
    for (int t = 0; t < n; t++) {
        count += theirs[t] != 0;
        assert_true(!(theirs[t] != 0 || chosen[t]) || all[t]);
        if (candidates == s.chosen) assert_true(chosen[t] == (theirs[t] != 0));
        chosen[t] = theirs[t] != 0;
    }
    assert_true(s.chosen == count);
    check_near((double)s.chosen / n, *golden(g, "fraction"), 0, 1e-6, "fraction");
}

static void test_policy_golden(void **state) {
    (void)state;
    FILE *f = golden_open("losses_peers.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "policy")) continue;
        int32_t offset[MOST_COMPLETIONS];
        const int loss = option_choice_index(POLICY_LOSS_CHOICES, g.family),
                  n = golden_offsets(&g, "length", offset, MOST_COMPLETIONS, MOST_TOKENS);
        const double *config = golden(&g, "config"), *expected = golden(&g, "dlogp");
        assert_true(loss >= POLICY_DPPO);
        PolicyLossConfig c = policy_loss_config((PolicyLossKind)loss);
        c.epsilon = config[0];
        c.epsilon_high = config[1];
        c.shape.kl_tau = config[2];
        c.shape.clip_cov_ratio = config[3];
        c.shape.clip_cov_low = config[4];
        c.shape.clip_cov_high = config[5];
        c.shape.kl_cov_ratio = config[6];
        c.shape.kl_cov_coef = config[7];
        uint8_t chosen[MOST_TOKENS];
        float *advantage = golden_floats(&g, "advantage"), *logp = golden_floats(&g, "logp"),
              *old = golden_floats(&g, "old"), dlogp[MOST_TOKENS];
        PolicyBatch b = {.completions = n, .offset = offset, .advantage = advantage, .logp = logp, .old_logp = old};
        if (policy_by_covariance(c.loss)) check_choice(&c, &g, &b, chosen);
        const PolicyNormaliser all = policy_normaliser(offset, n, NULL, NULL);
        PolicyStats stats = policy_stats();
        check_near(policy_loss(&c, &all, &b, dlogp, NULL, &stats), *golden(&g, "loss"), 1e-3, 1e-6, g.name);
        for (int t = 0; t < offset[n]; t++)
            check_near(dlogp[t], expected[t], largest(expected, offset[n]) * 0.1, 1e-6, g.name);
        LossMetric metric[POLICY_METRICS];
        const int metrics = policy_metrics(&c, &stats, metric);
        for (int i = 0; i < g.fields; i++) {
            int k = 0;
            if (strncmp(g.field[i].key, "metric:", 7)) continue;
            while (k < metrics && strcmp(metric[k].name, g.field[i].key + 7)) k++;
            assert_true(k < metrics);
            check_near(metric[k].value, g.field[i].values[0], 0.01, 1e-6, g.field[i].key);
        }
        free(advantage), free(logp), free(old);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 12);
}

/* ---- advantages of tokens ---- */

static void test_token_baseline_golden(void **state) {
    (void)state;
    FILE *f = golden_open("losses_peers.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "advantage")) continue;
        int32_t offset[MOST_COMPLETIONS];
        const int n = golden_offsets(&g, "length", offset, MOST_COMPLETIONS, MOST_TOKENS),
                  G = (int)*golden(&g, "group");
        const double *expected = golden(&g, "advantage");
        float *reward = golden_floats(&g, "reward"), *logp = golden_floats(&g, "logp"),
              *square = golden_floats(&g, "log_square"), A[MOST_TOKENS], addition[MOST_TOKENS],
              completion[MOST_COMPLETIONS];
        const TokenBaseline x = {offset, logp, square, A, addition};
        AdvantageStats stats;
        advantage_tokens(&x, reward, n / G, G, completion, &stats);
        for (int i = 0; i < n; i++)
            for (int t = offset[i]; t < offset[i + 1]; t++) {
                check_near(A[t], expected[t], largest(expected, offset[n]), 1e-6, g.name);
                check_near((double)completion[i] + addition[t], expected[t], largest(expected, offset[n]), 1e-6,
                           g.name);
            }
        free(reward), free(logp), free(square);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 4);
}

/* GFPO. TRL's choice among equal completions is not defined: the lengths of a group are distinct, and where rewards are 0 and
 * 1, at least as many are 1 as are kept. */
static void test_filter_golden(void **state) {
    (void)state;
    FILE *f = golden_open("losses_peers.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "gfpo")) continue;
        const int n = golden_count(&g, "length"), G = (int)golden(&g, "group")[0], K = (int)golden(&g, "group")[1];
        const double *length = golden(&g, "length"), *expected = golden(&g, "advantage");
        float *reward = golden_floats(&g, "reward"), kept[MOST_COMPLETIONS], A[MOST_COMPLETIONS];
        int32_t T[MOST_COMPLETIONS];
        AdvantageStats stats;
        for (int i = 0; i < n; i++) T[i] = (int32_t)length[i];
        for (int i = 0; i < n; i += G)
            advantage_filter((GroupFilter)option_choice_index(GROUP_FILTER_CHOICES, g.family), reward + i, T + i, G, K,
                             kept + i);
        advantage_group(kept, n / G, G, SCALE_GROUP, A, &stats);
        for (int i = 0; i < n; i++) check_near(A[i], expected[i], 1, 1e-6, g.name);
        free(reward);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 4);
}

/* Of equal completions the earlier are kept, and one without a reward never is. */
static void test_filter_ties(void **state) {
    (void)state;
    const float reward[5] = {1, NAN, 0.5f, 2, 1};
    const int32_t length[5] = {2, 1, 2, 4, 2};
    float kept[5];
    advantage_filter(GROUP_FILTER_LENGTH, reward, length, 5, 2, kept);
    assert_true(kept[0] == 1 && isnan(kept[1]) && kept[2] == 0.5f && isnan(kept[3]) && isnan(kept[4]));
    advantage_filter(GROUP_FILTER_EFFICIENCY, reward, length, 5, 2, kept);
    assert_true(kept[0] == 1 && isnan(kept[1]) && isnan(kept[2]) && kept[3] == 2 && isnan(kept[4]));
    advantage_filter(GROUP_FILTER_LENGTH, reward, length, 5, 4, kept);
    assert_true(kept[0] == 1 && isnan(kept[1]) && kept[2] == 0.5f && kept[3] == 2 && kept[4] == 1);
}

/* ---- A*-PO ---- */

static void test_a2po_golden(void **state) {
    (void)state;
    FILE *f = golden_open("losses_peers.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "a2po")) continue;
        int32_t offset[MOST_COMPLETIONS];
        const int n = golden_offsets(&g, "length", offset, MOST_COMPLETIONS, MOST_TOKENS),
                  samples = golden_count(&g, "samples") / n;
        const double *beta = golden(&g, "beta"), *expected = golden(&g, "dlogp");
        uint8_t counts[MOST_COMPLETIONS];
        float *reward = golden_floats(&g, "samples"), *target = golden_floats(&g, "target"),
              *logp = golden_floats(&g, "logp"), *ref = golden_floats(&g, "ref"), dlogp[MOST_TOKENS] = {0};
        for (int i = 0; i < n; i++) {
            counts[i] = 1;
            check_near(a2po_value(beta[0], reward + i * samples, samples), golden(&g, "v_star")[i], 1, 1e-8, "V");
        }
        const A2poBatch b = {n, offset, target, counts, logp, ref};
        A2poStats s = {0};
        check_near(a2po_loss(beta[1], n, &b, dlogp, &s), *golden(&g, "loss"), 1e-3, 1e-6, g.name);
        for (int t = 0; t < offset[n]; t++)
            check_near(dlogp[t], expected[t], largest(expected, offset[n]), 1e-6, g.name);
        check_near(s.implicit / s.completions, *golden(&g, "implicit"), 1e-3, 1e-6, "implicit reward");
        float parts[MOST_TOKENS] = {0}; /* micro-batches add up; a completion that does not count has no part */
        double sum = 0;
        for (int i = 0; i < n; i++) {
            const A2poBatch one = {1, offset + i, target + i, counts + i, logp, ref};
            sum += a2po_loss(beta[1], n, &one, parts, &s);
        }
        check_near(sum, *golden(&g, "loss"), 1e-3, 1e-6, "parts");
        assert_memory_equal(parts, dlogp, (size_t)offset[n] * sizeof *parts);
        counts[0] = 0;
        A2poStats less = {0};
        a2po_loss(beta[1], n, &b, parts, &less);
        assert_true(less.completions == n - 1 && parts[0] == dlogp[0]);
        free(reward), free(target), free(logp), free(ref);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 2);
}

/* Known values of V: the rewards' common value, their mean for a high temperature and their maximum for a low one. */
static void test_a2po_value(void **state) {
    (void)state;
    const float equal[3] = {0.7f, 0.7f, 0.7f}, some[4] = {1, 0, NAN, 0.5f}, none[2] = {NAN, NAN};
    check_near(a2po_value(0.5, equal, 3), 0.7, 0, 1e-7, "equal");
    check_near(a2po_value(1e4, some, 4), 0.5, 0, 1e-4, "mean");
    check_near(a2po_value(1e-3, some, 4), 1 - 1e-3 * log(3), 0, 1e-9, "maximum");
    assert_true(isnan(a2po_value(0.5, none, 2)));
}

/* ---- the likelihood of right completions ---- */

/* The loss and its gradient against the formula and central differences; parts add up to the whole. */
static void test_positive_nll(void **state) {
    (void)state;
    const int32_t offset[5] = {0, 2, 3, 6, 7};
    const float reward[4] = {1, 0.5f, 1.5f, NAN};
    const uint8_t counts[4] = {1, 1, 1, 1}, some[4] = {1, 1, 0, 1};
    float logp[7] = {-1, -0.5f, -3, -0.25f, -2, -0.125f, -4}, dlogp[7] = {0}, unused[7] = {0};
    PositiveNll p = {.coef = 0.3, .reward = 1};
    PositiveBatch b = {4, offset, reward, counts, logp};
    positive_nll_begin(&p, reward, counts, offset, 4);
    const double loss = positive_nll_add(&p, &b, dlogp);
    check_near(loss, 0.3 * (1 + 0.5 + 0.25 + 2 + 0.125) / 5, 0, 1e-7, "loss");
    check_near(p.sum / p.tokens, loss / 0.3, 0, 1e-12, "metric");
    for (int t = 0; t < 7; t++) {
        double side[2];
        const float at = logp[t];
        for (int k = 0; k < 2; k++) {
            logp[t] = at + (k ? 0.0625f : -0.0625f);
            side[k] = positive_nll_add(&p, &b, unused);
        }
        logp[t] = at;
        check_near(dlogp[t], (side[1] - side[0]) / 0.125, 0.1, 1e-6, "slope"); /* linear: exact but for rounding */
    }
    positive_nll_begin(&p, reward, counts, offset, 4);
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        const PositiveBatch one = {1, offset + i, reward + i, counts + i, logp};
        sum += positive_nll_add(&p, &one, unused);
    }
    check_near(sum, loss, 0, 1e-12, "parts");
    b.counts = some; /* a truncated completion is left out */
    positive_nll_begin(&p, reward, some, offset, 4);
    check_near(positive_nll_add(&p, &b, unused), 0.3 * 1.5 / 2, 0, 1e-7, "counts");
    p.reward = 2; /* no completion is right: no term */
    positive_nll_begin(&p, reward, counts, offset, 4);
    memset(unused, 0, sizeof unused);
    assert_true(positive_nll_add(&p, &b, unused) == 0 && unused[0] == 0);
}

/* Of all baselines that are the same for the completions of a group, it has the least variance of the estimated gradient: the
 * gradient's square is weighted by W. A completion without a reward changes nothing, and a group with one reward has none. */
static void test_token_baseline_is_optimal(void **state) {
    (void)state;
    enum { G = 6, T = 5 };
    Random r = random_start(4, 0);
    for (int trial = 0; trial < 50; trial++) {
        int32_t offset[G + 2];
        float reward[G + 1], logp[(G + 1) * T], square[(G + 1) * T], A[(G + 1) * T], addition[(G + 1) * T],
            completion[G + 1];
        for (int i = 0; i <= G + 1; i++) offset[i] = i * T;
        for (int i = 0; i <= G; i++) reward[i] = i == G ? NAN : (float)random_real(&r);
        for (int t = 0; t < (G + 1) * T; t++) {
            const double p = 0.05 + 0.9 * random_real(&r);
            logp[t] = (float)log(p);
            square[t] = (float)log(p * p + 0.5 * (1 - p) * (1 - p));
        }
        const TokenBaseline x = {offset, logp, square, A, addition};
        AdvantageStats stats;
        advantage_tokens(&x, reward, 1, G + 1, completion, &stats);
        double W[G] = {0};
        for (int t = 0; t < T; t++) {
            double best = 0, other[2] = {0};
            for (int i = 0; i < G; i++) {
                W[i] += 1 - 2 * exp(logp[offset[i] + t]) + exp(square[offset[i] + t]);
                const double a = A[offset[i] + t];
                best += W[i] * a * a;
                for (int k = 0; k < 2; k++) other[k] += W[i] * pow(a + (k ? 0.01 : -0.01), 2);
            }
            assert_true(best < other[0] && best < other[1]);
            assert_true(A[offset[G] + t] == 0 && completion[G] + addition[offset[G] + t] == 0);
        }
        for (int i = 1; i < G; i++) reward[i] = NAN;
        advantage_tokens(&x, reward, 1, G + 1, completion, &stats);
        for (int t = 0; t < offset[G + 1]; t++) assert_true(A[t] == 0 && addition[t] == 0);
    }
}

/* ---- the choice of tokens ---- */

enum { COMPLETIONS = 40, LENGTH = 25, TOKENS = COMPLETIONS * LENGTH };

typedef struct Step {
    int32_t offset[COMPLETIONS + 1];
    float advantage[COMPLETIONS], logp[TOKENS], old[TOKENS];
    PolicyBatch batch;
} Step;

static void step_make(Step *s, uint64_t seed) {
    Random r = random_start(seed, 0);
    for (int i = 0; i <= COMPLETIONS; i++) s->offset[i] = i * LENGTH;
    for (int i = 0; i < COMPLETIONS; i++) s->advantage[i] = (float)random_normal(&r);
    for (int t = 0; t < TOKENS; t++) {
        s->logp[t] = (float)(-3 * random_real(&r));
        s->old[t] = (float)(s->logp[t] + 0.1 * random_normal(&r));
    }
    s->batch = (PolicyBatch){.completions = COMPLETIONS,
                             .offset = s->offset,
                             .advantage = s->advantage,
                             .logp = s->logp,
                             .old_logp = s->old};
}

/* Every candidate is drawn equally often over many steps, and each step draws as many as it should. With 400 draws of a tenth
 * or so of the candidates, a candidate's count is binomial: 6 deviations are never left by chance. */
static void test_draw_is_uniform(void **state) {
    (void)state;
    enum { STEPS = 400 };
    static Step s;
    static uint8_t chosen[TOKENS], all[TOKENS];
    static int count[TOKENS];
    step_make(&s, 5);
    PolicyLossConfig c = policy_loss_config(POLICY_CLIP_COV);
    c.shape.clip_cov_low = 0.2;
    c.shape.clip_cov_ratio = 1;
    const double candidates = (double)covariance_choose(&c, &s.batch, ids, 1, 0, all).chosen;
    c.shape.clip_cov_ratio = 0.0205; /* 20.5 of the tokens: rounded down */
    for (int step = 0; step < STEPS; step++) {
        const CovarianceStats stats = covariance_choose(&c, &s.batch, ids, 9, (uint64_t)step, chosen);
        int64_t drawn = 0;
        for (int t = 0; t < TOKENS; t++) {
            drawn += chosen[t];
            count[t] += chosen[t];
        }
        assert_true(drawn == 20 && stats.chosen == 20 && stats.tokens == TOKENS);
    }
    const double p = 20 / candidates, deviation = sqrt(STEPS * p * (1 - p));
    assert_true(candidates > 100 && candidates < 800);
    for (int t = 0; t < TOKENS; t++) {
        if (!all[t]) assert_int_equal(count[t], 0);
        else assert_true(fabs(count[t] - STEPS * p) < 6 * deviation);
    }
}

/* The choice is a function of the completions alone: neither their place in the arrays nor their order matters, and a
 * candidate that leaves takes no other with it. */
static void test_choice_is_local(void **state) {
    (void)state;
    static Step s, far;
    static uint8_t chosen[TOKENS], again[TOKENS + LENGTH];
    step_make(&s, 6);
    PolicyLossConfig c = policy_loss_config(POLICY_CLIP_COV);
    c.shape.clip_cov_low = 0.2;
    c.shape.clip_cov_ratio = 0.03;
    covariance_choose(&c, &s.batch, ids, 1, 3, chosen);
    static float logp[TOKENS + LENGTH], old[TOKENS + LENGTH];
    memcpy(logp + LENGTH, s.logp, sizeof s.logp);
    memcpy(old + LENGTH, s.old, sizeof s.old);
    far = s;
    for (int i = 0; i <= COMPLETIONS; i++) far.offset[i] += LENGTH;
    const PolicyBatch moved = {
        .completions = COMPLETIONS, .offset = far.offset, .advantage = s.advantage, .logp = logp, .old_logp = old};
    covariance_choose(&c, &moved, ids, 1, 3, again);
    assert_memory_equal(chosen, again + LENGTH, sizeof chosen);
    uint64_t turned[COMPLETIONS];
    for (int i = 0; i < COMPLETIONS; i++) { /* in the opposite order */
        const int k = COMPLETIONS - 1 - i;
        turned[i] = ids[k];
        far.advantage[i] = s.advantage[k];
        memcpy(logp + i * LENGTH, s.logp + k * LENGTH, LENGTH * sizeof *logp);
        memcpy(old + i * LENGTH, s.old + k * LENGTH, LENGTH * sizeof *old);
    }
    const PolicyBatch back = {
        .completions = COMPLETIONS, .offset = s.offset, .advantage = far.advantage, .logp = logp, .old_logp = old};
    covariance_choose(&c, &back, turned, 1, 3, again);
    for (int i = 0; i < COMPLETIONS; i++)
        assert_memory_equal(again + i * LENGTH, chosen + (COMPLETIONS - 1 - i) * LENGTH, LENGTH);
    int t = 0, lost = 0, gained = 0;
    while (!chosen[t]) t++;
    s.old[t] = s.logp[t] - (s.advantage[t / LENGTH] > 0 ? 2 : -2); /* clipped: no candidate any more */
    covariance_choose(&c, &s.batch, ids, 1, 3, again);
    for (int k = 0; k < TOKENS; k++) {
        lost += chosen[k] && !again[k];
        gained += again[k] && !chosen[k];
    }
    assert_true(!again[t] && lost == 1 && gained == 1);
}

/* Completions that do not count and tokens that are not kept are in no mean and are never chosen. */
static void test_choice_leaves_out(void **state) {
    (void)state;
    static Step s;
    static uint8_t chosen[TOKENS], counts[COMPLETIONS], keep[TOKENS];
    step_make(&s, 8);
    double A = 0, l = 0, mean = 0, best = -INFINITY;
    int n = 0, place = -1;
    for (int i = 0; i < COMPLETIONS; i++) counts[i] = i % 3 != 0;
    for (int t = 0; t < TOKENS; t++) keep[t] = t % 4 != 0;
    for (int t = 0; t < TOKENS; t++)
        if (counts[t / LENGTH] && keep[t]) {
            A += s.advantage[t / LENGTH];
            l += s.logp[t];
            n++;
        }
    for (int t = 0; t < TOKENS; t++) {
        if (!counts[t / LENGTH] || !keep[t]) continue;
        const double x = (s.advantage[t / LENGTH] - A / n) * (s.logp[t] - l / n);
        mean += x / n;
        if (x > best) {
            best = x;
            place = t;
        }
    }
    s.batch.counts = counts;
    s.batch.keep = keep;
    PolicyLossConfig c = policy_loss_config(POLICY_KL_COV);
    CovarianceStats stats = covariance_choose(&c, &s.batch, ids, 1, 3, chosen);
    check_near(stats.mean, mean, 0, 1e-9, "mean");
    assert_true(stats.tokens == n && stats.chosen == 1 && chosen[place]);
    c.shape.kl_cov_ratio = 1;
    assert_true(covariance_choose(&c, &s.batch, ids, 1, 3, chosen).chosen == n);
    for (int t = 0; t < TOKENS; t++) assert_true(chosen[t] == (counts[t / LENGTH] && keep[t]));
    memset(counts, 0, sizeof counts);
    stats = covariance_choose(&c, &s.batch, ids, 1, 3, chosen);
    assert_true(stats.chosen == 0 && stats.tokens == 0 && isnan(stats.mean));
}

int main(void) {
    for (int i = 0; i < MOST_COMPLETIONS; i++) ids[i] = 100 + (uint64_t)i;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policy_golden),     cmocka_unit_test(test_token_baseline_golden),
        cmocka_unit_test(test_filter_golden),     cmocka_unit_test(test_filter_ties),
        cmocka_unit_test(test_a2po_golden),       cmocka_unit_test(test_a2po_value),
        cmocka_unit_test(test_positive_nll),      cmocka_unit_test(test_token_baseline_is_optimal),
        cmocka_unit_test(test_draw_is_uniform),   cmocka_unit_test(test_choice_is_local),
        cmocka_unit_test(test_choice_leaves_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
