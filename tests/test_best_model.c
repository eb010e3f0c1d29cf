/* test_best_model.c - the best evaluation of a run and early stopping, against transformers (golden/best_model.txt, written
 * by dev/golden/golden_best_model.py), and in every trainer: the file of --best holds the weights of a run that ends at
 * the best step, and a run that no longer improves ends where its own metrics say. Needs the trainers and data/. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/train/best_model.h" /* best_model_free, best_model_name, best_model_new, best_model_update, ... */
#include "golden.h"                   /* golden, Golden, golden_count, golden_free, ... */
#include "letters.h"                  /* LETTERS, letters_setup */
#include "models.h"                   /* refused, models_teardown */
#include "run.h"                      /* sh, metric_lines, weights_gap, metric, ... */
#include "shell.h"                    /* assert_holds, said */

static void like_transformers(void **state) {
    (void)state;
    FILE *f = golden_open("best_model.txt");
    Golden g;
    int cases = 0, bests = 0, overs = 0;
    for (; golden_next(f, &g); golden_free(&g), cases++) {
        const double *config = golden(&g, "config"), *value = golden(&g, "value");
        const double *best = golden(&g, "best"), *waited = golden(&g, "waited"), *over = golden(&g, "over");
        const bool loss = strstr(g.family, "loss"), greater = !strcmp(g.name, "greater");
        const BestOptions o = {.greater = loss != greater ? GREATER_AUTO
                                          : greater       ? GREATER_TRUE
                                                          : GREATER_FALSE,
                               .patience = (int64_t)config[0],
                               .threshold = config[1]};
        BestModel b = best_model_new(&o);
        best_model_name(&b, g.family);
        bool ended = false;
        for (int i = 0; i < golden_count(&g, "value"); i++) {
            assert_int_equal(best_model_update(&b, i + 1, value[i]), (int)best[i]);
            assert_int_equal(b.waited, (int)waited[i]);
            ended = ended || best_model_over(&b);
            assert_int_equal(ended, (int)over[i]);
            bests += (int)best[i], overs += (int)over[i];
        }
        best_model_free(&b);
    }
    fclose(f);
    assert_int_equal(cases, 50);
    assert_true(bests > 100 && overs > 100);
}

/* A value that is not finite is never the best, and does not count as an improvement. */
static void not_finite(void **state) {
    (void)state;
    const BestOptions o = {.patience = 2};
    const double values[] = {NAN, 0.5, INFINITY, -INFINITY};
    const bool best[] = {false, true, false, false};
    BestModel b = best_model_new(&o);
    best_model_name(&b, "eval_reward");
    for (int i = 0; i < 4; i++) {
        assert_false(best_model_over(&b));
        assert_int_equal(best_model_update(&b, i + 1, values[i]), best[i]);
    }
    assert_true(best_model_over(&b) && b.value == 0.5 && b.step == 2);
    best_model_free(&b);
}

static void states(void **state) {
    (void)state;
    const BestOptions o = {0};
    BestModel a = best_model_new(&o), b = best_model_new(&o), other = best_model_new(&o);
    json_t *saved = json_object();
    best_model_name(&a, "eval_loss"), best_model_name(&b, "eval_loss"), best_model_name(&other, "eval_accuracy");
    best_model_save(&a, saved);
    assert_int_equal(json_object_size(saved), 0);
    best_model_update(&a, 3, 0.1), best_model_update(&a, 4, 0.2);
    best_model_save(&a, saved);
    best_model_resume(&b, saved), best_model_resume(&other, saved);
    assert_true(b.value == 0.1 && b.step == 3 && b.waited == 1);
    assert_true(isnan(other.value) && !other.waited); /* of another metric */
    json_decref(saved);
    best_model_free(&a), best_model_free(&b), best_model_free(&other);
}

/* ---- the trainers ---------------------------------------------------------------------------------------------- */

enum { STEPS = 12 };

/* The step with the best value of a key among those of a metrics file that have one. */
static int best_step(const char *name, const char *key, bool greater) {
    int best = 0;
    double value = NAN;
    for (int i = 0; i < metric_lines(name); i++) {
        if (!has_metric(name, i, key)) continue;
        const double here = metric(name, i, key);
        if (isnan(value) || (greater ? here > value : here < value)) value = here, best = (int)metric(name, i, "step");
    }
    return best;
}

/* Runs a trainer whose learning rate does not depend on the length of the run. The file of --best has the weights of the
 * run that ends at the step of the best evaluation. */
static void keeps_the_best(const char *command, const char *key, const char *options, bool greater) {
    sh("rm -f $T/*.jsonl");
    sh("%s -x %d --eval-steps 1 -o $T/last.bin --best $T/best.bin %s --metrics $T/best.jsonl", command, STEPS, options);
    const int step = best_step("best.jsonl", key, greater);
    assert_in_range(step, 1, STEPS);
    sh("%s -x %d -o $T/there.bin", command, step);
    if (weights_gap("best.bin", "there.bin") != 0) fail_msg("%s: the best model is not that of step %d", command, step);
    if (step < STEPS) assert_true(weights_gap("best.bin", "last.bin") > 0);
}

#define RATE " -q --lr-scheduler-type constant --seed 3 "
#define SFT                                                                                                            \
    "./train_sft -c $T/base.bin -i $T/chat.shard -j $T/held.shard --batch-tokens 200 --sample-steps 0 -l 0.1" RATE
#define DPO  "./train_dpo -c $T/base.bin -i $T/prefs.shard -j $T/heldprefs.shard -d 8 -l 3e-2" RATE
#define RM   "./train_rm -c $T/base.bin -i $T/prefs.shard -j $T/heldprefs.shard -d 8 -l 3e-2" RATE
#define DRAW "-c $T/base.bin -j $T/tasks.shard -p 4 -G 4 -g 4 --sample-count 0 --max-eval-samples 20 -l 3e-2" RATE
#define GRPO "./train_grpo -i $T/tasks.shard --reward random " DRAW
#define PPO  "./train_ppo -i $T/tasks.shard --critic $T/base.bin --reward random " DRAW
#define NASH                                                                                                           \
    "./train_dpo --online -c $T/base.bin -i $T/prompts.shard -j $T/prompts.shard --reward-model $T/rm.bin -d 4 -g 4 "  \
    "--sample-count 0 --max-eval-samples 10 -l 3e-2" RATE

static void all_trainers(void **state) {
    (void)state;
    keeps_the_best(SFT, "eval_loss", "", false);
    keeps_the_best(SFT, "eval_mean_token_accuracy", "--metric-for-best-model mean_token_accuracy", true);
    keeps_the_best(SFT, "eval_entropy", "--metric-for-best-model eval_entropy --greater-is-better false", false);
    keeps_the_best(DPO, "eval_loss", "", false);
    keeps_the_best(RM, "eval_ece", "--metric-for-best-model ece --greater-is-better false", false);
    keeps_the_best(GRPO, "eval_completions/mean_length", "--metric-for-best-model completions/mean_length", true);
    keeps_the_best(PPO, "eval_completions/mean_length",
                   "--metric-for-best-model completions/mean_length --greater-is-better false", false);
    keeps_the_best(NASH, "eval_reward", "", true);
}

/* The step after which a run ends, from the evaluations of one that does not end early. */
static int end_of(const char *name, const char *key, int patience, double threshold) {
    double best = INFINITY;
    for (int i = 0, waited = 0; i < metric_lines(name); i++) {
        const double here = metric(name, i, key);
        waited = best - here > threshold ? 0 : waited + 1;
        best = fmin(best, here);
        if (waited == patience) return i + 1;
    }
    return metric_lines(name);
}

static void early_stopping(void **state) {
    (void)state;
    static const char *const command[] = {SFT, RM, DPO};
    for (int k = 0; k < 3; k++) {
        sh("rm -f $T/*.jsonl");
        sh("%s -x 40 --eval-steps 1 -o $T/whole.bin --metrics $T/whole.jsonl", command[k]);
        const int end = end_of("whole.jsonl", "eval_loss", 3, 0.01);
        if (end >= 40) fail_msg("%s: the loss improves to the end", command[k]);
        sh("%s -x 40 --eval-steps 1 -o $T/early.bin --metrics $T/early.jsonl --early-stopping-patience 3 "
           "--early-stopping-threshold 0.01 --state $T/early.state --save-steps 1",
           command[k]);
        assert_int_equal(metric_lines("early.jsonl"), end);
        assert_holds(said, "3 evaluations without a better eval_loss than");
        /* resumed from its middle, it ends at the same step with the same bytes; at its end, nothing is left */
        sh("%s -x 40 --eval-steps 1 -o $T/x.bin --early-stopping-patience 3 --early-stopping-threshold 0.01 "
           "--state $T/part.state --save-steps %d",
           command[k], end - 1);
        sh("%s -x 40 --eval-steps 1 -o $T/early.bin --resume $T/early.state --early-stopping-patience 3 "
           "--early-stopping-threshold 0.01",
           command[k]);
        assert_true(weights_gap("early.bin", "x.bin") == 0);
        sh("rm -f $T/part.jsonl");
        sh("%s -x 40 --eval-steps 1 -o $T/part.bin --resume $T/part.state --metrics $T/part.jsonl "
           "--early-stopping-patience 3 --early-stopping-threshold 0.01",
           command[k]);
        assert_int_equal(metric_lines("part.jsonl"), 1);
        assert_true(weights_gap("early.bin", "part.bin") == 0);
    }
}

static void bad_input(void **state) {
    (void)state;
    refused(1, SFT "-x 2 -o $T/kept --best $T/b.bin --metric-for-best-model reward",
            "--metric-for-best-model reward: the evaluation has no such metric; it has eval_loss, ");
    refused(1, GRPO "-x 2 -o $T/kept --early-stopping-patience 1 --metric-for-best-model loss", "no such metric");
    refused(2, SFT "-x 2 -o $T/kept --metric-for-best-model loss", "--metric-for-best-model: used only with");
    refused(2, SFT "-x 2 -o $T/kept --early-stopping-threshold 1", "--early-stopping-threshold: used only with");
    refused(2, "./train_sft -c $T/base.bin -i $T/chat.shard -x 2 -o $T/kept --early-stopping-patience 1",
            "--early-stopping-patience: used only with --val");
    refused(2, SFT "-x 2 -o $T/kept --best $T/b.bin --greater-is-better maybe", "--greater-is-better");
    refused(1, "./train_rm -c $T/base.bin -i $T/prefs.shard -j $T/prefs.shard -x 1 -o $T/kept --best $T/no/b.bin",
            "no/b");
}

static int setup(void **state) {
    if (letters_setup(state)) return 1;
    sh(LETTERS "--seed 5 --count 20 --format chat | ./data/make_shard --quiet -i - -o $T/held.shard");
    sh(LETTERS "--seed 5 --count 20 | ./data/make_shard --quiet -i - -o $T/heldprefs.shard");
    sh("./train_sft --layers 1 --width 16 --heads 1 --context 32 -i $T/chat.shard -x 3 -o $T/base.bin -q");
    sh("./train_rm -c $T/base.bin -i $T/prefs.shard -x 3 -l 1e-2 -o $T/rm.bin -q");
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(like_transformers), cmocka_unit_test(not_finite),     cmocka_unit_test(states),
        cmocka_unit_test(all_trainers),      cmocka_unit_test(early_stopping), cmocka_unit_test(bad_input),
    };
    return cmocka_run_group_tests(tests, setup, models_teardown);
}
