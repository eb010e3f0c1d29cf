/* test_implicit_prm.c - loss/implicit_prm.h: against values from verl's code (golden/implicit_prm.txt, written by
 * dev/golden/golden_implicit_prm.py), against its formulas in float64, and in cases whose answer is known. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/random.h"       /* random_below, Random, random_normal, random_real, ... */
#include "../llmc/loss/advantage.h"    /* AdvantageStats, advantage_rloo */
#include "../llmc/loss/gae.h"          /* whiten */
#include "../llmc/loss/implicit_prm.h" /* implicit_prm_rewards, ImplicitPrmConfig, ImplicitPrmBatch, ... */
#include "golden.h"                    /* check_near, golden, Golden, golden_floats, ... */

enum { MOST_TOKENS = 64, MOST_COMPLETIONS = 16 };

/* ---- verl ---- */

/* Rewards are rounded to float before they are summed, over up to six tokens. */
static void check_tokens(const Golden *g, const char *key, const float *x, int n) {
    const double *expected = golden(g, key);
    for (int t = 0; t < n; t++) check_near(x[t], expected[t], largest(expected, n), 2e-6, g->name);
}

static void check_golden(const Golden *g) {
    int32_t offset[MOST_COMPLETIONS];
    uint8_t counts[MOST_COMPLETIONS];
    float reward[MOST_TOKENS], A[MOST_TOKENS], dlogp[MOST_TOKENS], parts[MOST_TOKENS];
    double sum[MOST_COMPLETIONS], loss = 0;
    const int n = golden_offsets(g, "length", offset, MOST_COMPLETIONS, MOST_TOKENS), G = (int)golden(g, "config")[3];
    const double *s = golden(g, "config");
    const ImplicitPrmConfig c = {.beta = s[0], .dpo_coef = s[1], .gt_coef = s[2], .gamma = 1, .norm = (int)s[4]};
    memset(counts, 1, sizeof counts);
    float *logp = golden_floats(g, "logp"), *ref = golden_floats(g, "ref"), *outcome = golden_floats(g, "outcome");
    const ImplicitPrmBatch b = {n, offset, outcome, counts, logp, ref};
    check_near(implicit_prm_loss(&c, n, &b, dlogp), *golden(g, "loss"), 1, 2e-7, g->name);
    check_tokens(g, "dlogp", dlogp, offset[n]);
    for (int i = 0; i < n; i++) { /* micro-batches add up */
        const ImplicitPrmBatch one = {1, offset + i, outcome + i, counts + i, logp, ref};
        loss += implicit_prm_loss(&c, n, &one, parts);
    }
    check_near(loss, *golden(g, "loss"), 1, 2e-7, g->name);
    assert_memory_equal(parts, dlogp, (size_t)offset[n] * sizeof *parts);
    implicit_prm_rewards(&c, &b, reward);
    check_tokens(g, "reward", reward, offset[n]);
    implicit_prm_advantages(&c, &b, reward, G, A);
    check_tokens(g, "advantage", A, offset[n]);
    whiten(A, offset, n, counts, true);
    check_tokens(g, "whitened", A, offset[n]);
    const ImplicitPrmStats stats = implicit_prm_stats(&b, reward, G, sum);
    check_near(stats.dpo_acc, *golden(g, "dpo_acc"), 1, 1e-7, g->name);
    check_near(stats.dpo_acc_abs, *golden(g, "dpo_acc_abs"), 1, 1e-7, g->name);
    check_near(stats.reward, golden(g, "mean")[0], 1, 1e-6, g->name);
    check_near(stats.raw_reward, golden(g, "mean")[1], 1, 1e-6, g->name);
    free(logp), free(ref), free(outcome);
}

static void has_golden_values(void **state) {
    (void)state;
    FILE *f = golden_open("implicit_prm.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        check_golden(&g);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 9);
}

/* ---- the formulas ---- */

/* Three prompts of four completions. Of the first all count, of the second three, of the last one. */
enum { G = 4, COMPLETIONS = 12 };

typedef struct Case {
    int32_t offset[COMPLETIONS + 1];
    uint8_t counts[COMPLETIONS];
    float outcome[COMPLETIONS], logp[MOST_TOKENS], ref[MOST_TOKENS];
    int tokens;
    ImplicitPrmBatch b;
} Case;

static void case_make(Case *c, uint64_t seed) {
    Random r = random_start(seed, 0);
    for (int i = 0; i < COMPLETIONS; i++) {
        c->counts[i] = i != 5 && i < 9;
        c->outcome[i] = c->counts[i] ? (float)random_below(&r, 3) / 2 : NAN;
        c->offset[i + 1] = c->offset[i] + 1 + (int32_t)random_below(&r, 5);
    }
    c->tokens = c->offset[COMPLETIONS];
    for (int t = 0; t < c->tokens; t++) {
        c->logp[t] = (float)(-3 * random_real(&r));
        c->ref[t] = (float)(c->logp[t] + random_normal(&r));
    }
    c->b = (ImplicitPrmBatch){COMPLETIONS, c->offset, c->outcome, c->counts, c->logp, c->ref};
}

/* The loss of the process reward model with log-probability number `at` moved by h. */
static double cross_entropy(const Case *c, double beta, double completions, int at, double h) {
    double loss = 0;
    for (int i = 0; i < COMPLETIONS; i++) {
        double r = 0;
        if (!c->counts[i]) continue;
        for (int t = c->offset[i]; t < c->offset[i + 1]; t++)
            r += beta * ((double)c->logp[t] + (t == at ? h : 0) - c->ref[t]);
        loss += (log(1 + exp(r)) - c->outcome[i] * r) / completions;
    }
    return loss;
}

/* The gradient against central differences. They err by h^2 / 6 times a third derivative below 0.1 beta^3, and by float64's
 * rounding over h: 2e-10 in all. The gradient is rounded to float, and so is the reward from which it is computed. */
static void has_its_gradient(void **state) {
    (void)state;
    const double h = 1e-4;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        Case c = {0};
        float dlogp[MOST_TOKENS];
        case_make(&c, seed);
        ImplicitPrmConfig how = implicit_prm_config();
        how.beta = 0.1 * (double)(seed * seed);
        check_near(implicit_prm_loss(&how, 8, &c.b, dlogp), cross_entropy(&c, how.beta, 8, -1, 0), 1, 1e-6, "loss");
        for (int t = 0; t < c.tokens; t++) {
            const double slope =
                (cross_entropy(&c, how.beta, 8, t, h) - cross_entropy(&c, how.beta, 8, t, -h)) / (2 * h);
            check_near(dlogp[t], slope, how.beta, 1e-6, "slope");
        }
        assert_true(dlogp[c.offset[5]] == 0 && dlogp[c.offset[11]] == 0);
    }
}

/* A_t of token t of completion i from the formula, in float64 and from the float rewards. */
static double advantage_of(const Case *c, const ImplicitPrmConfig *how, const float *reward, int i, int t) {
    const int first = i / G * G;
    double mean = 0, outcome = 0, n = 0, process = 0;
    for (int j = first; j < first + G; j++) {
        double sum = 0;
        if (!c->counts[j]) continue;
        for (int s = c->offset[j]; s < c->offset[j + 1]; s++) sum += reward[s];
        mean += sum / (c->offset[j + 1] - c->offset[j]);
        outcome += c->outcome[j];
        n++;
    }
    if (!c->counts[i] || n < 2) return 0;
    for (int s = t; s < c->offset[i + 1]; s++) process += pow(how->gamma, s - t) * n / (n - 1) * (reward[s] - mean / n);
    return how->dpo_coef * process + how->gt_coef * (c->outcome[i] - (outcome - c->outcome[i]) / (n - 1));
}

static void advantages_follow_the_formula(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 8; seed++) {
        Case c = {0};
        float reward[MOST_TOKENS], A[MOST_TOKENS];
        case_make(&c, seed);
        const ImplicitPrmConfig how = {.beta = 0.7,
                                       .dpo_coef = 3,
                                       .gt_coef = 2,
                                       .gamma = seed % 2 ? 1 : 0.8,
                                       .norm = seed % 4 < 2 ? PRM_BATCH_NORM : PRM_NO_NORM,
                                       .granularity = seed > 4 ? PRM_WHOLE : PRM_TOKEN};
        implicit_prm_rewards(&how, &c.b, reward);
        implicit_prm_advantages(&how, &c.b, reward, G, A);
        for (int i = 0; i < COMPLETIONS; i++)
            for (int t = c.offset[i]; t < c.offset[i + 1]; t++)
                check_near(A[t], advantage_of(&c, &how, reward, i, t), 10, 1e-6, "advantage");
    }
}

/* Rewards: beta q_t, or their sum at the last token; with batch_norm the largest return is 1; 0 if a completion does not count,
 * whose values have no effect. */
static void rewards_are_placed_and_scaled(void **state) {
    (void)state;
    Case c = {0};
    float token[MOST_TOKENS], whole[MOST_TOKENS], scaled[MOST_TOKENS], again[MOST_TOKENS];
    case_make(&c, 3);
    ImplicitPrmConfig how = {.beta = 0.25, .norm = PRM_NO_NORM};
    implicit_prm_rewards(&how, &c.b, token);
    how.granularity = PRM_WHOLE;
    implicit_prm_rewards(&how, &c.b, whole);
    for (int i = 0; i < COMPLETIONS; i++) {
        double sum = 0;
        for (int t = c.offset[i]; t < c.offset[i + 1]; t++) {
            assert_true(token[t] == (c.counts[i] ? (float)(0.25 * ((double)c.logp[t] - c.ref[t])) : 0));
            if (t < c.offset[i + 1] - 1) assert_true(whole[t] == 0);
            sum += token[t];
        }
        check_near(whole[c.offset[i + 1] - 1], sum, 1, 1e-6, "whole");
    }
    how.granularity = PRM_TOKEN;
    how.norm = PRM_BATCH_NORM;
    implicit_prm_rewards(&how, &c.b, scaled);
    check_near(implicit_prm_largest_return(&c.b, scaled), 1, 1, 1e-5, "largest return"); /* 1e-6 is added to it */
    for (int t = c.offset[5]; t < c.offset[6]; t++) c.logp[t] = 100;
    for (int t = c.offset[9]; t < c.tokens; t++) c.logp[t] = NAN;
    implicit_prm_rewards(&how, &c.b, again);
    assert_memory_equal(scaled, again, (size_t)c.tokens * sizeof *again);
}

/* ---- known answers ---- */

/* Without process rewards, all tokens have the advantage of RLOO. */
static void without_process_it_is_rloo(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        Case c = {0};
        AdvantageStats unused;
        float reward[MOST_TOKENS], A[MOST_TOKENS], rloo[COMPLETIONS], outcome[COMPLETIONS];
        case_make(&c, 4);
        ImplicitPrmConfig how = implicit_prm_config();
        how.gt_coef = 4;
        if (k) how.dpo_coef = 0;
        else how.beta = 0;
        implicit_prm_rewards(&how, &c.b, reward);
        implicit_prm_advantages(&how, &c.b, reward, G, A);
        for (int i = 0; i < COMPLETIONS; i++) outcome[i] = c.counts[i] ? c.outcome[i] : NAN;
        advantage_rloo(outcome, COMPLETIONS / G, G, false, rloo, &unused);
        for (int i = 0; i < COMPLETIONS; i++)
            for (int t = c.offset[i]; t < c.offset[i + 1]; t++) assert_true(A[t] == 4 * rloo[i]);
    }
}

/* At its first token, a completion has the process return of the paper's equation 5, which subtracts the mean of the others
 * from each reward. With rewards that are the same for all tokens, so have all. */
static void the_first_token_is_the_papers(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        Case c = {0};
        float reward[MOST_TOKENS], A[MOST_TOKENS];
        case_make(&c, 6);
        for (int i = 0; k && i < COMPLETIONS; i++)
            for (int t = c.offset[i]; t < c.offset[i + 1]; t++) c.logp[t] = c.ref[t] + 0.5f * (float)i;
        const ImplicitPrmConfig how = {.beta = 1, .dpo_coef = 1, .gamma = 1, .norm = PRM_NO_NORM};
        implicit_prm_rewards(&how, &c.b, reward);
        implicit_prm_advantages(&how, &c.b, reward, G, A);
        for (int i = 0; i < G; i++) /* the prompt of which all completions count */
            for (int t = c.offset[i]; t < (k ? c.offset[i + 1] : c.offset[i] + 1); t++) {
                double others = 0, expected = 0;
                for (int j = 0; j < G; j++)
                    for (int s = c.offset[j]; j != i && s < c.offset[j + 1]; s++)
                        others += (double)reward[s] / (c.offset[j + 1] - c.offset[j]) / (G - 1);
                for (int s = t; s < c.offset[i + 1]; s++) expected += reward[s] - others;
                check_near(A[t], expected, 10, 1e-6, "equation 5");
            }
    }
}

/* Rewards that order and separate the outcomes, that do neither, and none. */
static void accuracies(void **state) {
    (void)state;
    const int32_t offset[5] = {0, 1, 2, 3, 4};
    const uint8_t counts[4] = {1, 1, 1, 1}, none[4] = {0};
    const float outcome[4] = {1, 0, 0.5f, 1}, ref[4] = {0}, best[4] = {2, -1, 0, 1}, worst[4] = {-2, 1, -1, -1};
    double sum[4];
    ImplicitPrmBatch b = {4, offset, outcome, counts, best, ref};
    ImplicitPrmStats s = implicit_prm_stats(&b, best, 4, sum);
    assert_true(s.dpo_acc == 1 && s.dpo_acc_abs == 1 && s.reward == 0.5);
    b.logp = worst; /* the pairs are 1-0 twice, 1-0.5 twice, 0-0.5; -1 is above -2, not above -1 */
    s = implicit_prm_stats(&b, worst, 4, sum);
    check_near(s.dpo_acc, 0.5 / 3.5, 1, 1e-12, "pairs");
    assert_true(s.dpo_acc_abs == 0);
    s = implicit_prm_stats(&b, ref, 4, sum); /* a new model: no reward has a sign */
    assert_true(s.dpo_acc_abs == 0.25 && s.reward == 0);
    b.counts = none;
    s = implicit_prm_stats(&b, ref, 4, sum);
    assert_true(isnan(s.dpo_acc) && isnan(s.dpo_acc_abs) && isnan(s.reward));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(has_golden_values),
        cmocka_unit_test(has_its_gradient),
        cmocka_unit_test(advantages_follow_the_formula),
        cmocka_unit_test(rewards_are_placed_and_scaled),
        cmocka_unit_test(without_process_it_is_rloo),
        cmocka_unit_test(the_first_token_is_the_papers),
        cmocka_unit_test(accuracies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
