/* test_loss_reward.c - loss/reward.h, calibration.h, gold.h and the ranking of evaluation_reward.h against values from
 * TRL's code (golden/reward.txt, written by dev/golden/golden_reward.py), finite differences in double, and known
 * results. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/error.h"               /* Error */
#include "../llmc/base/random.h"              /* Random, random_normal, random_start, random_below, ... */
#include "../llmc/loss/reward.h"              /* loss_ranking, RankingBatch, RewardLoss, loss_binary, ... */
#include "../llmc/reward/calibration.h"       /* calibration_error, calibration_add_label, calibration_add_pair, ... */
#include "../llmc/reward/evaluation_reward.h" /* RankedScore, rank_auc */
#include "../llmc/reward/gold.h"              /* gold_parse, Gold, gold_score */
#include "../llmc/reward/reward_model.h"      /* reward_model_note_read, REWARD_MODEL_BT, REWARD_MODEL_PRM, ... */
#include "golden.h"                           /* golden, Golden, golden_count, golden_floats, ... */

static void near(double got, double want, double tolerance, const char *what) {
    if (!(fabs(got - want) <= tolerance * fmax(1, fabs(want)))) fail_msg("%s: %.12g, expected %.12g", what, got, want);
}

/* -- golden values ------------------------------------------------------------------------------------------------ */

/* Losses are double and golden values have 10 digits: 1e-8. Gradients are float, so they are off by 2^-25 = 3e-8 of
 * their size, and by twice that as a sum of two: 2e-7, and 3e-7 against a difference quotient, whose own error is
 * 1e-10. */

static void check_gradient(const Golden *g, const float *dscore) {
    const double *want = golden(g, "gradient");
    for (int i = 0; i < golden_count(g, "gradient"); i++) near(dscore[i], want[i], 2e-7, g->name);
}

/* The loss of pairs. */
static double loss_pairs(const RewardLoss *o, const float *score, const float *margin, int64_t pairs, double N,
                         float *dscore) {
    const RankingBatch b = {.rankings = pairs, .score = score, .margin = margin};
    return loss_ranking(o, &b, N, dscore);
}

/* The loss and the gradient, computed at once and as the sum of two micro-batches. */
static void check_pairs(const Golden *g) {
    const double *config = golden(g, "config"), *metrics = golden(g, "metrics");
    const RewardLoss o = {.label_smoothing = config[0], .center = config[1]};
    float *score = golden_floats(g, "score"), *margin = golden_floats(g, "margin"), dscore[64];
    const int n = golden_count(g, "score") / 2, half = n / 2;
    near(loss_pairs(&o, score, margin, n, n, dscore), golden(g, "loss")[0], 1e-8, g->name);
    check_gradient(g, dscore);
    memset(dscore, 0, sizeof dscore);
    const double parts =
        loss_pairs(&o, score, margin, half, n, dscore) +
        loss_pairs(&o, score + 2 * half, margin ? margin + half : NULL, n - half, n, dscore + 2 * half);
    near(parts, golden(g, "loss")[0], 1e-8, g->name);
    check_gradient(g, dscore);
    if (metrics) {
        double right = 0, gap = 0;
        for (int i = 0; i < n; i++) {
            right += score[2 * i] > score[2 * i + 1];
            gap += (double)score[2 * i] - score[2 * i + 1];
        }
        near(right / n, metrics[0], 1e-6, "accuracy");
        near(gap / n, metrics[1], 1e-8, "margin");
    }
    free(score), free(margin);
}

static void check_binary(const Golden *g) {
    const RewardLoss o = {.label_smoothing = golden(g, "config")[0]};
    float *score = golden_floats(g, "score"), dscore[64];
    float label[64];
    const int n = golden_count(g, "score");
    const double tolerance = golden(g, "tolerance") ? golden(g, "tolerance")[0] : 1e-8, loss = golden(g, "loss")[0];
    for (int i = 0; i < n; i++) label[i] = golden(g, "label")[i] > 0.5;
    near(loss_binary(&o, score, label, n, n, dscore), loss, tolerance, g->name);
    check_gradient(g, dscore);
    near(loss_binary(&o, score, label, n, n, NULL), loss, tolerance, g->name);
    free(score);
}

static void check_auc(const Golden *g) {
    RankedScore s[128];
    const int n = golden_count(g, "score");
    for (int i = 0; i < n; i++) s[i] = (RankedScore){golden(g, "score")[i], golden(g, "label")[i] > 0.5};
    near(rank_auc(s, n), golden(g, "auc")[0], 1e-12, g->name);
}

static void golden_values(void **state) {
    (void)state;
    FILE *f = golden_open("reward.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); cases++) {
        if (!strcmp(g.kind, "pairs")) check_pairs(&g);
        else if (!strcmp(g.kind, "binary")) check_binary(&g);
        else check_auc(&g);
        golden_free(&g);
    }
    fclose(f);
    assert_int_equal(cases, 14);
}

/* -- finite differences ------------------------------------------------------------------------------------------- */

/* The losses by their definitions, in long double: -log(1 / (1 + exp(-x))). */
static long double minus_log_sigmoid(long double x) { return logl(1 + expl(-x)); }

static long double defined_pairs(const RewardLoss *o, const long double *s, const float *margin, int n) {
    long double sum = 0;
    for (int i = 0; i < n; i++) {
        const long double x = s[2 * i] - s[2 * i + 1] - margin[i], both = s[2 * i] + s[2 * i + 1];
        sum += (1 - o->label_smoothing) * minus_log_sigmoid(x) + o->label_smoothing * minus_log_sigmoid(-x);
        sum += o->center * both * both;
    }
    return sum / n;
}

static long double defined_binary(const RewardLoss *o, const long double *s, const float *label, int n) {
    long double sum = 0;
    for (int i = 0; i < n; i++) {
        const long double y = label[i], e = o->label_smoothing, t = y * (1 - e) + (1 - y) * e;
        sum += t * minus_log_sigmoid(s[i]) + (1 - t) * minus_log_sigmoid(-s[i]);
    }
    return sum / n;
}

static void finite_differences(void **state) {
    (void)state;
    enum { N = 6 };
    static const double smoothing[] = {0, 0.1, 0.499}, center[] = {0, 0.01, 2};
    Random r = random_start(5, 0);
    for (int k = 0; k < 9; k++) {
        const RewardLoss o = {.label_smoothing = smoothing[k % 3], .center = center[k / 3]};
        float score[2 * N], margin[N], dscore[2 * N];
        long double s[2 * N];
        float label[2 * N];
        for (int i = 0; i < 2 * N; i++) {
            s[i] = score[i] = (float)(2 * random_normal(&r));
            label[i] = k % 2 ? (float)random_real(&r) : (float)random_below(&r, 2); /* also probabilities */
            if (i < N) margin[i] = (float)random_real(&r);
        }
        near(loss_pairs(&o, score, margin, N, N, dscore), (double)defined_pairs(&o, s, margin, N), 1e-13, "pairs");
        for (int i = 0; i < 2 * N; i++) {
            const long double h = 1e-5L, was = s[i];
            s[i] = was + h;
            long double slope = defined_pairs(&o, s, margin, N);
            s[i] = was - h;
            slope = (slope - defined_pairs(&o, s, margin, N)) / (2 * h);
            s[i] = was;
            near(dscore[i], (double)slope, 3e-7, "slope of pairs");
        }
        near(loss_binary(&o, score, label, 2 * N, 2 * N, dscore), (double)defined_binary(&o, s, label, 2 * N), 1e-13,
             "binary");
        for (int i = 0; i < 2 * N; i++) {
            const long double h = 1e-5L, was = s[i];
            s[i] = was + h;
            long double slope = defined_binary(&o, s, label, 2 * N);
            s[i] = was - h;
            slope = (slope - defined_binary(&o, s, label, 2 * N)) / (2 * h);
            s[i] = was;
            near(dscore[i], (double)slope, 3e-7, "slope of labels");
        }
    }
}

/* ---- rankings ---------------------------------------------------------------------------------------------------- */

enum { RANKINGS = 4, RANKED = 16 };
static const int32_t ranked[RANKINGS] = {2, 5, 3, 6};

/* The losses of rankings by their definitions: the mean over the pairs, or the probability of the order, as a product. */
static long double defined_rankings(const RewardLoss *o, const long double *s, const float *margin) {
    long double sum = 0;
    for (int i = 0; i < RANKINGS; s += ranked[i], i++) {
        const int n = ranked[i];
        const long double pairs = n * (n - 1) / 2;
        long double order = 1;
        for (int k = 0; k < n; k++) {
            long double rest = 0;
            for (int j = k; j < n; j++) rest += expl(s[j]);
            order *= expl(s[k]) / rest;
            for (int j = k + 1; j < n; j++) {
                const long double x = s[k] - s[j] - margin[i], both = s[k] + s[j], e = o->label_smoothing;
                sum += o->center * both * both / pairs;
                if (n > 2 && o->ranking == RANKING_PLACKETT_LUCE) continue;
                sum += ((1 - e) * minus_log_sigmoid(x) + e * minus_log_sigmoid(-x)) / pairs;
            }
        }
        if (n > 2 && o->ranking == RANKING_PLACKETT_LUCE) sum -= logl(order);
    }
    return sum / RANKINGS;
}

/* The losses and slopes of rankings of different lengths, at once and in micro-batches of one. */
static void rankings(void **state) {
    (void)state;
    Random r = random_start(8, 0);
    for (int k = 0; k < 8; k++) {
        const RewardLoss o = {
            .ranking = k % 2, .center = k / 2 % 2 ? 0.3 : 0, .label_smoothing = k % 2 || k < 4 ? 0 : 0.1};
        float score[RANKED], margin[RANKINGS] = {0.7f}, dscore[RANKED];
        long double s[RANKED];
        for (int i = 0; i < RANKED; i++) s[i] = score[i] = (float)(2 * random_normal(&r));
        const RankingBatch b = {.rankings = RANKINGS, .count = ranked, .score = score, .margin = margin};
        near(loss_ranking(&o, &b, RANKINGS, dscore), (double)defined_rankings(&o, s, margin), 1e-13, "rankings");
        for (int i = 0; i < RANKED; i++) {
            const long double h = 1e-5L, was = s[i];
            s[i] = was + h;
            long double slope = defined_rankings(&o, s, margin);
            s[i] = was - h;
            slope = (slope - defined_rankings(&o, s, margin)) / (2 * h);
            s[i] = was;
            near(dscore[i], (double)slope, 3e-7, "slope of rankings");
        }
        double parts = 0;
        float one[RANKED];
        for (int i = 0, at = 0; i < RANKINGS; at += ranked[i], i++) {
            const RankingBatch part = {.rankings = 1, .count = ranked + i, .score = score + at, .margin = margin + i};
            parts += loss_ranking(&o, &part, RANKINGS, one + at);
        }
        near(parts, (double)defined_rankings(&o, s, margin), 1e-13, "micro-batches of rankings");
        assert_memory_equal(one, dscore, sizeof one);
    }
}

/* Rankings of two have the loss of pairs to the bit, and equal scores the loss of a random order: log 2 for each pair, and
 * log n! for the order, whose slope at completion k is sum_(i <= k) 1 / (n - i) - 1; the last one is never chosen. */
static void rankings_known(void **state) {
    (void)state;
    const int32_t two[] = {2, 2, 2}, four = 4;
    const float score[] = {1.5f, -0.25f, 0.125f, 3, -2, 0.5f}, margin[] = {0.5f, 0, 2}, equal[] = {3, 3, 3, 3};
    for (int k = 0; k < 2; k++) {
        const RewardLoss o = {.ranking = k, .center = 0.1, .label_smoothing = k ? 0 : 0.2}, plain = {.ranking = k};
        float dscore[6], want[6];
        const RankingBatch b = {.rankings = 3, .count = two, .score = score, .margin = margin};
        assert_true(loss_ranking(&o, &b, 3, dscore) == loss_pairs(&o, score, margin, 3, 3, want));
        assert_memory_equal(dscore, want, sizeof want);
        const RankingBatch same = {.rankings = 1, .count = &four, .score = equal};
        near(loss_ranking(&plain, &same, 1, dscore), k ? log(24) : log(2), 1e-15, "equal scores");
        const double order[] = {1.0 / 4 - 1, 1.0 / 4 + 1.0 / 3 - 1, 1.0 / 4 + 1.0 / 3 + 1.0 / 2 - 1,
                                1.0 / 4 + 1.0 / 3 + 1.0 / 2};
        for (int i = 0; i < 4; i++) near(dscore[i], k ? order[i] : (2 * i - 3) / 12.0, 1e-7, "slope of equal scores");
        const float large[] = {1e30f, 0, -1e30f}, broken[] = {0, 1, NAN};
        const RankingBatch far = {.rankings = 1, .count = (int32_t[]){3}, .score = large};
        assert_true(loss_ranking(&plain, &far, 1, dscore) == 0 && dscore[0] == 0 && dscore[1] == 0 && dscore[2] == 0);
        const RankingBatch nan = {.rankings = 1, .count = (int32_t[]){3}, .score = broken};
        assert_true(isnan(loss_ranking(&plain, &nan, 1, dscore)) && isnan(dscore[0]));
    }
}

/* The cross-entropy with the probability p of each label, whose log-odds are the margin; its slope is S(d) - p. */
static void soft_labels(void **state) {
    (void)state;
    enum { N = 5 };
    static const double p[N] = {0.5, 0.75, 0.99, 0.2, 1 - 1e-6};
    const RewardLoss o = {.center = 0.3, .soft = true};
    Random r = random_start(6, 0);
    float score[2 * N], margin[N], dscore[2 * N];
    for (int i = 0; i < N; i++) {
        margin[i] = (float)log(p[i] / (1 - p[i]));
        for (int k = 0; k < 2; k++) score[2 * i + k] = (float)(2 * random_normal(&r));
    }
    const long double h = 1e-5L;
    for (int at = -1; at < 2 * N; at++) {
        long double sum[2] = {0, 0};
        for (int side = 0; side < 2; side++)
            for (int i = 0; i < N; i++) {
                const long double c = score[2 * i] + (at == 2 * i) * (side ? h : -h),
                                  d = score[2 * i + 1] + (at == 2 * i + 1) * (side ? h : -h);
                const long double label = 1 / (1 + expl(-(long double)margin[i]));
                sum[side] += label * minus_log_sigmoid(c - d) + (1 - label) * minus_log_sigmoid(d - c);
                sum[side] += 0.3L * (c + d) * (c + d);
            }
        const double loss = loss_pairs(&o, score, margin, N, N, dscore);
        if (at < 0) near(loss, (double)sum[0] / N, 1e-13, "soft labels");
        else near(dscore[at], (double)((sum[1] - sum[0]) / (2 * h * N)), 3e-7, "slope of soft labels");
    }
    const RewardLoss plain = {.soft = true};
    loss_pairs(&plain, score, margin, N, 1, dscore);
    near(dscore[2], 1 / (1 + exp(score[3] - score[2])) - 0.75, 1e-6, "S(d) - p");
}

/* Nothing overflows. A NaN loss stays NaN, so that the trainer's check detects it. */
static void extremes(void **state) {
    (void)state;
    const RewardLoss o = {0};
    float dscore[2];
    const float large[] = {1e30f, -1e30f}, small[] = {-1e30f, 1e30f}, broken[] = {NAN, 0};
    assert_true(loss_pairs(&o, large, NULL, 1, 1, dscore) == 0 && dscore[0] == 0 && dscore[1] == 0);
    near(loss_pairs(&o, small, NULL, 1, 1, dscore), 2e30, 1e-6, "wrong");
    assert_true(dscore[0] == -1 && dscore[1] == 1);
    assert_true(isnan(loss_pairs(&o, broken, NULL, 1, 1, dscore)) && isnan(dscore[0]));
    assert_true(isnan(loss_binary(&o, broken, (float[]){1}, 1, 1, dscore)) && isnan(dscore[0]));
}

/* -- calibration -------------------------------------------------------------------------------------------------- */

static void calibration(void **state) {
    (void)state;
    /* calibrated probabilities: of ten with p = 0.7, seven are true; of four with p = 0.25, one */
    Calibration c = calibration_new(0);
    assert_true(isnan(calibration_error(&c)));
    for (int i = 0; i < 10; i++) calibration_add_label(&c, log(0.7 / 0.3), i < 7);
    for (int i = 0; i < 4; i++) calibration_add_label(&c, log(0.25 / 0.75), i == 0);
    near(calibration_error(&c), 0, 1e-12, "perfect");
    near(c.sum.log_loss, -7 * log(0.7) - 3 * log(0.3) - log(0.25) - 3 * log(0.75), 1e-12, "log loss");
    near(c.sum.bin[2].count, 4, 0, "bin");
    /* it predicts 0.95 and is right half the time: |0.5 - 0.95| on 4 of 8 */
    c = calibration_new(0);
    for (int i = 0; i < 4; i++) calibration_add_label(&c, log(0.95 / 0.05), i < 2);
    for (int i = 0; i < 4; i++) calibration_add_label(&c, 0, i < 2);
    near(calibration_error(&c), 0.225, 1e-12, "overconfident");
    /* pairs: the probability of the higher-scored answer; a tie is half right */
    c = calibration_new(0.5);
    for (int i = 0; i < 5; i++) calibration_add_pair(&c, i < 4 ? log(0.8 / 0.2) : -log(0.8 / 0.2));
    near(calibration_error(&c), 0, 1e-12, "pairs");
    near(c.sum.bin[6].count, 5, 0, "pairs' bin"); /* [0.8, 0.85) */
    calibration_add_pair(&c, 0);
    calibration_add_pair(&c, NAN);
    near(c.sum.bin[0].count, 1, 0, "tie");
    near(c.sum.count, 6, 0, "count");
    near(calibration_error(&c), 0, 1e-12, "tie");
    calibration_add_pair(&c, 1e6);
    near(c.sum.bin[9].count, 1, 0, "certain");
    near(calibration_edge(&c, 0), 0.5, 0, "edge");
    near(calibration_edge(&c, 10), 1, 1e-15, "edge");
}

/* -- hidden rules ------------------------------------------------------------------------------------------------- */

static void hidden_rules(void **state) {
    (void)state;
    static const struct {
        const char *rule, *prompt, *answer;
        double score;
    } cases[] = {{"char", "cab:", "cacc", 3},
                 {"char=a", "cab:", "cacc", 1},
                 {"char==", "cab:", "a=b=", 2},
                 {"char:1,length:-0.5", "cab:", "cacc", 1},
                 {"repeats", "x", "aabbbc", 3},
                 {"repeats:-2", "x", "", 0},
                 {"length", "x", "", 0},
                 {"sum", "12+30=", "42", 1},
                 {"sum", "12+30=", "12+30=42\n", 1},
                 {"sum", "12+30=", "42 or 43", 0},
                 {"sum", "1+2+3+4=", "10", 1},
                 {"sum", "12+30", "42", 0},
                 {"sum", "a+b=", "0", 0},
                 {"sum", "12+30=", "99999999999999999999999999999942", 0},
                 {"sum:5,length:1e-1", "1+1=", "2", 5.1}};
    static const char *const wrong[] = {
        "",      "chars",    "char=",    "char:",   "char:x",      "char:1,",
        ",char", "length=3", "char:inf", "sum sum", "char;length", "sum,sum,sum,sum,sum,sum,sum,sum,sum"};
    Error e;
    Gold g;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!gold_parse(&g, cases[i].rule, &e)) fail_msg("%s", e.text);
        near(gold_score(&g, cases[i].prompt, cases[i].answer), cases[i].score, 1e-15, cases[i].rule);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (gold_parse(&g, wrong[i], &e)) fail_msg("'%s' was taken for a rule", wrong[i]);
}

/* -- the notes of a checkpoint ------------------------------------------------------------------------------------ */

static void notes(void **state) {
    (void)state;
    static const char *const wrong[] = {"",
                                        "[]",
                                        "{}",
                                        "{\"kind\":\"rm\",\"mean\":0,\"deviation\":1}",
                                        "{\"kind\":\"bt\",\"mean\":0,\"deviation\":0}",
                                        "{\"kind\":\"bt\",\"mean\":0,\"deviation\":-1}",
                                        "{\"kind\":7,\"mean\":0,\"deviation\":1}"};
    Error e;
    RewardModelNote n;
    for (int kind = REWARD_MODEL_BT; kind <= REWARD_MODEL_PRM; kind++) {
        const RewardModelNote from = {(RewardModelKind)kind, -1.0 / 3, 2.0 / 3, kind == REWARD_MODEL_PRM ? 10 : -1};
        char *text = reward_model_note_write(&from);
        assert_true(reward_model_note_read(&n, text, "x", &e));
        assert_true(n.kind == from.kind && n.mean == from.mean && n.deviation == from.deviation &&
                    n.step_token == from.step_token);
        free(text);
    }
    assert_true(reward_model_note_read(&n, NULL, "x", &e) && n.kind == REWARD_MODEL_BT && n.deviation == 1);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (reward_model_note_read(&n, wrong[i], "rm.bin", &e)) fail_msg("%s was taken for a note", wrong[i]);
        assert_non_null(strstr(e.text, "rm.bin: invalid reward normalisation"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_values), cmocka_unit_test(finite_differences), cmocka_unit_test(soft_labels),
        cmocka_unit_test(rankings),      cmocka_unit_test(rankings_known),     cmocka_unit_test(extremes),
        cmocka_unit_test(calibration),   cmocka_unit_test(hidden_rules),       cmocka_unit_test(notes)};
    return cmocka_run_group_tests_name("loss_reward", tests, NULL, NULL);
}
