/* test_eval_sets.c - the sets of validation records: their names and records, and in every trainer the metrics of each set,
 * which are those of a run that has this set alone. Needs the trainers and data/. */
#include "../llmc/base/error.h"        /* Error */
#include "../llmc/base/options.h"      /* OptionList */
#include "../llmc/records/eval_sets.h" /* EvalSets, eval_sets_free, eval_sets_new, eval_set, ... */
#include "../llmc/records/inputs.h"    /* Inputs, inputs_close, inputs_open */
#include "files.h"                     /* files_path */
#include "letters.h"                   /* LETTERS, letters_setup */
#include "models.h"                    /* refused, assert_near, models_teardown */
#include "run.h"                       /* sh, metric, has_metric */

/* The files of a list that ends in NULL. */
static Inputs inputs_of(const char **values) {
    Error e;
    Inputs in;
    OptionList list = {0};
    while (values[list.count]) list.count++;
    list.items = values;
    if (!inputs_open(&in, "-j/--val", &list, &e)) fail_msg("%s", e.text);
    return in;
}

static void names_and_records(void **state) {
    (void)state;
    Inputs in = inputs_of(
        (const char *[]){"math=x/a.shard", "x/b.shard", "y/b.bin", "math=c.shard", "none.shard", "b_2.shard", NULL});
    const int file[] = {0, 1, 2, 0, 3, 2, 1, 5, 0};
    static const struct {
        const char *name;
        int64_t count, record[4];
    } all[] = {{"math", 4, {0, 3, 4, 8}}, {"b", 2, {1, 6}}, {"b_2", 2, {2, 5}}, {"b_2_2", 1, {7}}};
    for (int most = 0; most < 6; most++) {
        EvalSets s = eval_sets_new(&in, file, 9, most);
        int64_t total = 0;
        assert_int_equal(s.count, 4);
        assert_true(s.told);
        for (int k = 0; k < s.count; k++) {
            const int64_t n = most && most < all[k].count ? most : all[k].count;
            assert_string_equal(s.name[k], all[k].name);
            assert_int_equal(eval_set_size(&s, k), n);
            assert_memory_equal(eval_set(&s, k), all[k].record, (size_t)n * sizeof(int64_t));
            total += n;
        }
        assert_int_equal(eval_sets_size(&s), total);
        eval_sets_free(&s);
    }
    inputs_close(&in);
}

static void one_file(void **state) {
    (void)state;
    const int file[] = {0, 0};
    for (int named = 0; named < 2; named++) {
        Inputs in = inputs_of((const char *[]){named ? "a=x/held.shard" : "x/held.shard", NULL});
        assert_string_equal(in.path[0], "x/held.shard");
        EvalSets s = eval_sets_new(&in, file, 2, 0);
        assert_int_equal(s.told, named);
        assert_string_equal(s.name[0], named ? "a" : "held");
        eval_sets_free(&s), inputs_close(&in);
    }
}

/* A file of exactly that name is taken as it is. */
static void a_name_with_equals(void **state) {
    (void)state;
    char path[300];
    snprintf(path, sizeof path, "%s", files_path("a=b"));
    fclose(fopen(path, "w"));
    const char *slash = strrchr(path, '/');
    assert_non_null(slash);
    Inputs in = inputs_of((const char *[]){path, "x/y=z", "bad name=z", NULL});
    assert_string_equal(in.path[0], path);
    assert_string_equal(in.path[1], "x/y=z"); /* no name: it has a slash */
    assert_string_equal(in.path[2], "bad name=z");
    for (int i = 0; i < 3; i++) assert_null(in.label[i]);
    inputs_close(&in);
    unlink(path);
}

/* ---- the trainers ---------------------------------------------------------------------------------------------- */

/* Runs one step with both sets, and with each alone. `keys`: metrics without "eval_", that end in NULL. weight: those of
 * the sets in the mean of all, 0 if it is not a mean. */
static void each_set(const char *command, const char *kind, const char *const *keys) {
    char held[400];
    static const char *const name[] = {"one", "two", "all", "few"};
    snprintf(held, sizeof held, "-j one=$T/%s-a.shard -j two=$T/%s-b.shard", kind, kind);
    sh("rm -f $T/*.jsonl");
    sh("%s %s --metrics $T/all.jsonl", command, held);
    sh("%s %s --max-eval-samples 3 --metrics $T/few.jsonl", command, held);
    sh("%s -j $T/%s-a.shard --metrics $T/one.jsonl", command, kind);
    sh("%s -j $T/%s-b.shard --metrics $T/two.jsonl", command, kind);
    sh("%s -j \"b=$T/%s-[ab].shard\" --metrics $T/both.jsonl", command, kind); /* one set of both files */
    sh("%s -j $T/%s-c.shard --metrics $T/three.jsonl", command, kind);         /* the first three records of a */
    for (int i = 0; keys[i]; i++) {
        char key[60], of_all[60];
        snprintf(of_all, sizeof of_all, "eval_%s", keys[i]);
        for (int k = 0; k < 2; k++) {
            char file[20];
            snprintf(key, sizeof key, "eval_%s_%s", name[k], keys[i]);
            snprintf(file, sizeof file, "%s.jsonl", name[k]);
            assert_near(metric("all.jsonl", -1, key), metric(file, -1, of_all), 2e-5);
            assert_false(has_metric(file, -1, key));
        }
        snprintf(key, sizeof key, "eval_one_%s", keys[i]);
        assert_near(metric("few.jsonl", -1, key), metric("three.jsonl", -1, of_all), 2e-5);
        snprintf(key, sizeof key, "eval_b_%s", keys[i]);
        assert_near(metric("both.jsonl", -1, key), metric("both.jsonl", -1, of_all), 0);
        assert_near(metric("all.jsonl", -1, of_all), metric("both.jsonl", -1, of_all), 2e-5);
    }
}

#define KEYS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define ONE       " -x 1 -q -o $T/x.bin "
#define DRAW      "-c $T/base.bin -i $T/tasks-a.shard -p 2 -G 2 -g 3 --sample-count 0 --eval-samples 2" ONE

static void all_trainers(void **state) {
    (void)state;
    each_set("./train_sft -c $T/base.bin -i $T/chat.shard --sample-steps 0" ONE, "chat",
             KEYS("loss", "mean_token_accuracy", "entropy"));
    each_set("./train_rm -c $T/base.bin -i $T/prefs.shard" ONE, "prefs",
             KEYS("loss", "accuracy", "margin", "min_reward", "max_reward", "ece"));
    each_set("./train_dpo -c $T/base.bin -i $T/prefs.shard --beta 2 -l 1e-2" ONE, "prefs",
             KEYS("loss", "rewards/accuracies", "rewards/margins", "mean_token_accuracy"));
    each_set("./train_grpo --reward length=3 " DRAW, "tasks", KEYS("accuracy", "completions/mean_length"));
    each_set("./train_ppo --critic $T/base.bin --reward length=3 " DRAW, "tasks",
             KEYS("accuracy", "completions/mean_length"));
}

/* Two files without names are two sets under the files' own. */
static void own_names(void **state) {
    (void)state;
    sh("./train_dpo -c $T/base.bin -i $T/prefs.shard -j $T/prefs-a.shard -j $T/prefs-b.shard --metrics $T/own.jsonl" ONE);
    assert_true(has_metric("own.jsonl", -1, "eval_prefs-a_loss") && has_metric("own.jsonl", -1, "eval_prefs-b_loss"));
    sh("./train_sft -c $T/base.bin -i news=$T/chat.shard:2 -i $T/chat-a.shard:1 -x 1 -q -o $T/x.bin --metrics $T/mix.jsonl");
    assert_true(has_metric("mix.jsonl", -1, "mix/news/share") && has_metric("mix.jsonl", -1, "mix/chat-a/share"));
}

static void bad_input(void **state) {
    (void)state;
#define MADE " -x 1 -o $T/kept "
    refused(2, "./train_sft -c $T/base.bin -i news=$T/chat.shard" MADE, "give a weight, too");
    refused(1, "./train_sft -c $T/base.bin -i $T/chat.shard -j a=$T/none.shard" MADE, "none.shard");
    refused(2, "./train_dpo -c $T/base.bin -i $T/prefs.shard -j a=$T/prefs-a.shard -j b=$T/prefs-a.shard" MADE,
            "are the same file");
    refused(2, "./train_dpo -c $T/base.bin -i $T/prefs.shard --max-eval-samples 2" MADE,
            "--max-eval-samples: used only with --val");
    refused(2, "./train_rm -c $T/base.bin -i $T/prefs.shard -j a=$T/prefs-a.shard:3" MADE, "is for training data only");
}

static int setup(void **state) {
    if (letters_setup(state)) return 1;
    for (int k = 0; k < 3; k++) {
        const char name = (char)('a' + k);
        const int seed = k == 1 ? 8 : 5, count = k == 0 ? 12 : k == 1 ? 7 : 3;
        sh(LETTERS
           "--seed %d --count 12 --format chat | head -n %d | ./data/make_shard --quiet -i - -o $T/chat-%c.shard",
           seed, count, name);
        sh(LETTERS "--seed %d --count 12 | head -n %d | ./data/make_shard --quiet -i - -o $T/prefs-%c.shard", seed,
           count, name);
        sh("./data/make_tasks --task add --digits 1 --seed %d --count 12 --split all --format prompt | head -n %d | "
           "./data/make_shard --quiet -i - -o $T/tasks-%c.shard",
           seed, count, name);
    }
    sh("./train_sft --layers 1 --width 16 --heads 1 --context 32 -i $T/chat.shard -x 3 -o $T/base.bin -q");
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_records), cmocka_unit_test(one_file),  cmocka_unit_test(a_name_with_equals),
        cmocka_unit_test(all_trainers),      cmocka_unit_test(own_names), cmocka_unit_test(bad_input),
    };
    return cmocka_run_group_tests(tests, setup, models_teardown);
}
