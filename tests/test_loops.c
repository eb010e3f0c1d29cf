/* test_loops.c - scripts of loops with tiny settings: every round runs, a second run does nothing again, a changed setting runs
 * what depends on it.
 *
 * Needs data/, train_sft, generate and evaluate. */
#include "../llmc/base/error.h" /* xstrdup */
#include "files.h"              /* files_path, text_of */
#include "models.h"             /* json_text_of, lines_of, json_line_of, assert_near, ... */
#include "shell.h"              /* assert_holds, out, run, said */

#define TINY                                                                                                           \
    "LOOP_OUT=$T/loops ROUNDS=1 BASE_STEPS=60 PROBLEMS=100 STEPS=4 HELDOUT=40 GOMP_SPINCOUNT=0 OMP_NUM_THREADS=1 "

static int lines_with(const char *text, const char *part) {
    int n = 0;
    for (const char *s = text; (s = strstr(s, part)); s += strlen(part)) n++;
    return n;
}

static int rows_of(const char *name) {
    char *text = text_of(files_path(name));
    const int n = lines_of(text);
    free(text);
    return n;
}

/* Training on right samples has a table with the control, and as many rows for both. */
static void rejection_sampling(void **state) {
    (void)state;
    run(0, TINY "scripts/rft.sh 1");
    assert_int_equal(lines_with(out, " %"), 9);
    assert_holds(out, "rft: right samples");
    assert_holds(out, "control: any samples");
    const int right = rows_of("loops/rft-1/right.jsonl");
    assert_in_range(right, 1, 400);
    assert_int_equal(rows_of("loops/rft-1/any.jsonl"), right);
    char *first = xstrdup(out);
    run(0, TINY "scripts/rft.sh 1; cat $T/loops/rft-1/log");
    assert_memory_equal(out, first, strlen(first));
    assert_null(strstr(out, "\n+ ")); /* no stage ran */
    free(first);
    run(0, TINY "SAMPLES=3 scripts/rft.sh 1; cat $T/loops/rft-1/log");
    assert_holds(out, "+ ./generate ");
    assert_holds(out, "+ ./train_sft ");
    assert_null(strstr(out, "+ ./data/make_tasks"));
    run(2, "scripts/rft.sh one");
    assert_holds(said, "rft: one: the seed must be a whole number");
    run(2, "scripts/rft.sh 1 2");
    assert_holds(said, "rft: 2: unexpected argument");
    run(2, "LOOP_MODEL=$T/own.safetensors scripts/rft.sh 1");
    assert_holds(said, "rft: LOOP_MODEL: only star.sh and tulu.sh run with a real model");
}

/* Every solution that is kept is right, and the prompts have no hint. */
static void self_taught(void **state) {
    (void)state;
    run(0, TINY "scripts/star.sh 1");
    assert_holds(out, "star, round 1");
    assert_holds(out, "control, round 1");
    char *kept = text_of(files_path("loops/star-1/star1.kept.jsonl"));
    const int n = lines_of(kept);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        int x[4], y[4];
        json_t *row = json_line_of(kept, i);
        assert_int_equal(sscanf(json_text_of(row, "prompt"), "sort %d %d %d %d:", x, x + 1, x + 2, x + 3), 4);
        assert_null(strchr(json_text_of(row, "prompt"), '('));
        assert_int_equal(sscanf(json_text_of(row, "completion"), "%d %d %d %d", y, y + 1, y + 2, y + 3), 4);
        int sum = 0, cubes = 0;
        for (int k = 0; k < 4; k++) {
            assert_true(!k || y[k] >= y[k - 1]);
            sum += x[k] - y[k];
            cubes += x[k] * x[k] * x[k] - y[k] * y[k] * y[k];
        }
        assert_true(!sum && !cubes);
        json_decref(row);
    }
    free(kept);
}

/* A loop with a model that is given begins with adapters for problems in words. This model has learned nothing, and solves
 * none. */
static void own_model(void **state) {
    (void)state;
    run(0, "data/make_tasks --task word --level 1 --count 8 --format chat -o $T/words.jsonl && "
           "data/make_shard -i $T/words.jsonl -o $T/words.shard --template plain && "
           "./train_sft --layers 1 --width 32 --heads 2 --context 160 -i $T/words.shard -o $T/own.safetensors -x 1");
    run(1, TINY "LOOP_MODEL=$T/own.safetensors SHOWN=40 BASE_STEPS=2 scripts/star.sh 3");
    assert_holds(out, "\nbase                             0.0 %   0.0 %   0.0 %");
    assert_holds(said, "star: a stage failed: ./data/make_shard ");
    run(0, "cat $T/loops/star-3/log");
    assert_holds(out, "/loops/base-3/base.safetensors --max-steps 2 ");
    assert_holds(out, " --lora-rank 16 --dtype bf16 ");
    assert_int_equal(rows_of("loops/star-3/star1.kept.jsonl"), 0);
    char *held = text_of(files_path("loops/base-3/heldout.jsonl"));
    assert_int_equal(lines_with(held, "How many "), 40);
    free(held);
}

/* The answers that SPIN counts are those that differ from the demonstrations; the margin is over all held-out problems. */
static void self_play(void **state) {
    (void)state;
    run(0, TINY "scripts/spin.sh 1");
    for (int round = 0; round < 2; round++) {
        char name[60], line[20];
        int differ = 0, printed = 0;
        double margin = NAN;
        snprintf(name, sizeof name, "loops/spin-1/spin%d.games.all.jsonl", round);
        char *rows = text_of(files_path(name));
        assert_int_equal(lines_of(rows), 40);
        for (int i = 0; i < 40; i++) {
            json_t *row = json_line_of(rows, i);
            differ += strcmp(json_text_of(row, "answer"), json_text_of(row, "completion")) != 0;
            json_decref(row);
        }
        free(rows);
        assert_in_range(differ, 1, 40);
        snprintf(line, sizeof line, "\nround %d ", round);
        const char *at = strstr(out, line);
        assert_true(at && sscanf(at + 8, "%d %lf", &printed, &margin) == 2);
        assert_int_equal(printed, differ);
        snprintf(name, sizeof name, "loops/spin-1/spin%d.metrics.jsonl", round);
        char *metrics = text_of(files_path(name)), *last = NULL;
        for (char *s = metrics; (s = strstr(s, "\"eval_rewards/margins\":")); s++) last = s;
        assert_non_null(last);
        assert_near(margin, differ / 40.0 * strtod(strchr(last, ':') + 1, NULL), 6e-4);
        free(metrics);
    }
}

/* Constitutional AI runs to its end with a model that has learned nothing: each revision answers the critique of its answer. */
static void constitution(void **state) {
    (void)state;
    run(0, TINY "ROWS=300 RL_STEPS=1 REVISIONS=1 TIE=0 scripts/constitutional.sh 1");
    assert_holds(out, "SL-CAI, 1 revisions");
    assert_holds(out, "RL-CAI");
    char *rows = text_of(files_path("loops/constitutional-1/again1.jsonl"));
    assert_int_equal(lines_of(rows), 100);
    for (int i = 0; i < 100; i++) {
        json_t *row = json_line_of(rows, i);
        const json_t *m = json_object_get(row, "messages");
        assert_int_equal(json_array_size(m), 5);
        const char *asked = json_text_of(json_array_get(m, 2), "content"),
                   *again = json_text_of(json_array_get(m, 4), "content");
        assert_true(!strcmp(asked, *again == 'd' ? "d?" : "e?") && !strcmp(again + 1, ">a")); /* one principle */
        json_decref(row);
    }
    free(rows);
}

/* The model's own verdicts decide about its pairs. */
static void self_rewarding(void **state) {
    (void)state;
    run(0, TINY "ROWS=600 scripts/self-rewarding.sh 1");
    assert_holds(out, "M1, IFT and EFT");
    char *pairs = text_of(files_path("loops/self-rewarding-1/m2.pairs.jsonl"));
    assert_true(lines_of(pairs) > 0);
    json_t *row = json_line_of(pairs, 0);
    assert_true(json_number_of(row, "margin") > 0.002);
    json_decref(row);
    free(pairs);
}

static void chapters(void **state) {
    (void)state;
    run(2, "scripts/chapter.sh");
    assert_holds(
        said, "chapter.sh: give one of 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26, or all");
    run(2, "scripts/chapter.sh 99");
    /* a claim that does not hold is said and is the status: five steps teach nothing */
    run(1, TINY "BASE_STEPS=5 scripts/chapter.sh 5 7");
    assert_holds(out, "claim   demonstrations teach a task");
    assert_holds(out, ": does not hold\n");
}

/* The page of all chapters has each claim with its verdict, and links to the reports that there are. */
static void page_of_chapters(void **state) {
    (void)state;
    run(1, TINY "BASE_STEPS=5 CHAPTERS='2 5 7' scripts/chapter.sh all 7");
    assert_holds(out, "claims that do not hold: chapter 5\n");
    char *page = text_of(files_path("loops/chapters-7.html"));
    assert_holds(page, "<tr><th colspan=3>Chapter 2: likelihood, KL, entropy");
    assert_holds(page, "<tr><td>perplexity is exp(loss)<td>");
    assert_holds(page, "<td class=no>does not hold\n");
    assert_holds(page, "Chapter 7: comparisons <a href=\"chapter-7-7/report.html\">chapter-7-7</a>");
    free(page);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rejection_sampling), cmocka_unit_test(self_taught),
                                       cmocka_unit_test(own_model),          cmocka_unit_test(self_play),
                                       cmocka_unit_test(constitution),       cmocka_unit_test(self_rewarding),
                                       cmocka_unit_test(chapters),           cmocka_unit_test(page_of_chapters)};
    return cmocka_run_group_tests_name("loops", tests, models_setup, models_teardown);
}
