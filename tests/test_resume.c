/* test_resume.c - interrupted runs of ./train_sft and ./train_grpo.
 *
 * After --resume the result is that of an uninterrupted run, byte for byte; a second signal ends the program at once; a
 * kill leaves complete files. Needs both programs and data/make_shard. */
#include "files.h"  /* files_path, files_assert_content */
#include "models.h" /* refused, lines_of, assert_near, json_line_of, ... */
#include "run.h"    /* sh, assert_same_file, run_start, run_wait, ... */
#include "shell.h"  /* said, assert_holds, out, put, ... */

static int setup(void **state) {
    if (models_setup(state)) return 1;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    setenv("OMP_NUM_THREADS", "2", 1);
    FILE *chat = fopen(files_path("chat.jsonl"), "w"), *tasks = fopen(files_path("tasks.jsonl"), "w");
    for (int p = 0; p < 26; p++) {
        for (int k = 0; k < 10; k++) fprintf(chat, "{\"prompt\":\"%c=\",\"completion\":\"%d\"}\n", 'a' + p, k);
        fprintf(tasks, "{\"prompt\":\"%c=\",\"answer\":\"%d\",\"task\":\"exact\"}\n", 'a' + p, (3 * p + 1) % 10);
    }
    if (fclose(chat) | fclose(tasks)) return 1;
    sh("data/make_shard --quiet -i $T/chat.jsonl -o $T/chat.shard");
    sh("data/make_shard --quiet -i $T/tasks.jsonl -o $T/tasks.shard");
    sh("head -n 200 $T/chat.jsonl | data/make_shard --quiet -i - -o $T/other.shard");
    sh("./train_sft --layers 1 --width 32 --heads 2 --context 16 -i $T/chat.shard -o $T/base.bin -x 40 -l 0.02 "
       "--batch-tokens 512 --micro-tokens 512");
    return 0;
}

/* Two metrics files are equal except for times and speeds. */
static void assert_same_metrics(const char *a, const char *b) {
    static const char *const clocks[] = {"time",         "step_time",       "perf/share_of_peak",
                                         "timing_s/gen", "timing_s/reward", "timing_s/update"};
    char *x = metrics_text(files_path(a)), *y = metrics_text(files_path(b));
    assert_int_equal(lines_of(x), lines_of(y));
    for (int i = 0; i < lines_of(x); i++) {
        json_t *row[] = {json_line_of(x, i), json_line_of(y, i)};
        for (size_t k = 0; k < sizeof clocks / sizeof *clocks; k++) {
            json_object_del(row[0], clocks[k]);
            json_object_del(row[1], clocks[k]);
        }
        if (!json_equal(row[0], row[1])) {
            char *text[] = {json_dumps(row[0], JSON_SORT_KEYS), json_dumps(row[1], JSON_SORT_KEYS)};
            fail_msg("line %d differs:\n%s\n%s", i, text[0], text[1]);
        }
        json_decref(row[0]), json_decref(row[1]);
    }
    free(x), free(y);
}

/* Runs `command` without interruption, then with a signal after about each of these numbers of metrics lines, resuming
 * each time. */
static void resumes_bit_for_bit(const char *command, const int *stops, int count) {
    char text[1200];
    const int signals[] = {SIGTERM, SIGINT};
    sh("%s -o $T/whole.bin --metrics $T/whole.jsonl", command);
    unlink(files_path("parts.jsonl")), unlink(files_path("parts.bin")), unlink(files_path("parts.bin.state"));
    for (int i = 0; i <= count; i++) {
        snprintf(text, sizeof text, "%s -o $T/parts.bin --metrics $T/parts.jsonl %s", command,
                 i ? "--resume $T/parts.bin.state" : "");
        const pid_t pid = run_start(text);
        if (i < count) {
            run_until(files_path("parts.jsonl"), stops[i]);
            kill(pid, signals[i % 2]);
            kill(pid, signals[i % 2]); /* timeout(1) sends its signal twice */
        }
        if (run_wait(pid, 120)) fail_msg("%s: %s", text, said);
        assert_string_equal(out, "");
        if (i == count) break;
        assert_holds(said, "stopped by a signal after step");
        assert_int_equal(access(files_path("parts.bin"), F_OK), -1); /* no model before the end */
        assert_int_equal(access(files_path("parts.bin.state"), R_OK), 0);
    }
    assert_same_file("whole.bin", "parts.bin");
    assert_same_metrics("whole.jsonl", "parts.jsonl");
}

#define SFT                                                                                                            \
    "./train_sft -c $T/base.bin -i $T/chat.shard -j $T/chat.shard --eval-steps 50 -l 1e-3 "                            \
    "--batch-tokens 128 --micro-tokens 96 --warmup-steps 5 --neftune-noise-alpha 2 --weight-decay 0.1 "
#define GRPO                                                                                                              \
    "./train_grpo -c $T/base.bin -i $T/tasks.shard -j $T/tasks.shard --max-eval-samples 4 --eval-steps 9 -g 3 -p 4 -G 4 " \
    "--micro-tokens 96 -l 1e-3 --sample-count 1 "

static void sft_resumes(void **state) {
    (void)state;
    resumes_bit_for_bit(SFT "-x 900 --lr-scheduler-type cosine", (const int[]){3, 200, 500}, 3);
    resumes_bit_for_bit(SFT "--num-train-epochs 20 --best $T/best.bin --loss-type dft", (const int[]){40}, 1);
}

static void grpo_resumes(void **state) {
    (void)state;
    resumes_bit_for_bit(GRPO "-x 500 --entropy-coef 0.01", (const int[]){2, 100, 250}, 3);
    resumes_bit_for_bit(GRPO "-x 500 --num-iterations 2 --steps-per-generation 2 --use-adaptive-entropy "
                             "--entropy-target 0.6 --dynamic-sampling --max-resamples 3 --beta 0.1",
                        (const int[]){3, 100, 220}, 3);
    resumes_bit_for_bit(GRPO "-x 300 --beta 0.1 --kl-in reward --reward random:0.3,verify --loss-type gspo "
                             "--top-entropy-quantile 0.5",
                        (const int[]){60}, 1);
    resumes_bit_for_bit(GRPO "-x 300 --beta 0.1 --sync-ref-model --ref-model-sync-steps 7 --ref-reset-steps 50 "
                             "--kl-controller adaptive --kl-target 0.05 --kl-horizon 500",
                        (const int[]){60}, 1);
}

/* States that are written during the run are equally good: a run resumed from any of them reaches the same end. */
static void states_on_the_way(void **state) {
    (void)state;
    sh(SFT "-x 30 -o $T/a.bin --state $T/a.state --save-steps 20");
    sh(SFT "-x 30 -o $T/b.bin --resume $T/a.state");
    assert_same_file("a.bin", "b.bin");
    /* three steps per generation: a state is written at the end of the next generation, and the request is not lost */
    sh(GRPO "-x 30 --num-iterations 3 -o $T/a.bin --state $T/a.state --save-steps 20");
    sh(GRPO "-x 30 --num-iterations 3 -o $T/b.bin --resume $T/a.state --metrics $T/b.jsonl");
    assert_same_file("a.bin", "b.bin");
    assert_near(metric("b.jsonl", 0, "step"), 22, 0);
    /* -c may be omitted, and the state is also a model */
    sh("./train_sft -i $T/chat.shard -j $T/chat.shard --eval-steps 50 -l 1e-3 --batch-tokens 128 "
       "--micro-tokens 96 --warmup-steps 5 --neftune-noise-alpha 2 "
       "--weight-decay 0.1 -x 30 -o $T/a.bin -c $T/base.bin --state $T/a.state --save-steps 20");
    sh("./train_sft -i $T/chat.shard -j $T/chat.shard --eval-steps 50 -l 1e-3 --batch-tokens 128 "
       "--micro-tokens 96 --warmup-steps 5 --neftune-noise-alpha 2 "
       "--weight-decay 0.1 -x 30 -o $T/b.bin --resume $T/a.state");
    assert_same_file("a.bin", "b.bin");
    sh("./generate -c $T/a.state -g 3 a=");
    /* as an initial model it provides no moments: the first step is that of the same weights without them */
    sh(SFT "-x 20 --lr-scheduler-type constant -o $T/plain.bin --state $T/same.state --save-steps 20");
    sh("./train_sft -c $T/plain.bin -i $T/chat.shard -l 1e-3 --batch-tokens 128 --micro-tokens 96 -x 3 "
       "-o $T/a.bin");
    sh("./train_sft -c $T/same.state -i $T/chat.shard -l 1e-3 --batch-tokens 128 --micro-tokens 96 "
       "-x 3 -o $T/b.bin");
    assert_true(weights_gap("a.bin", "b.bin") == 0);
}

static void the_best_model_survives_a_stop(void **state) {
    (void)state;
    /* stopped before the first validation: the best model is still to come */
    sh(SFT "-x 10 -o $T/a.bin --best $T/best1.bin --save-steps 10 --state $T/a.state --eval-steps 15");
    unlink(files_path("best1.bin"));
    sh(SFT "-x 30 -o $T/a.bin --best $T/best1.bin --save-steps 10 --state $T/a.state --eval-steps 15");
    assert_int_equal(access(files_path("best1.bin"), R_OK), 0);
    sh(SFT "-x 20 -o $T/a.bin --state $T/a.state --save-steps 10 --eval-steps 30");
    unlink(files_path("best1.bin"));
    sh("cp $T/a.state $T/b.state");
    sh(SFT "-x 30 -o $T/a.bin --best $T/best1.bin --resume $T/b.state --eval-steps 30");
    assert_int_equal(access(files_path("best1.bin"), R_OK), 0);
}

static void a_second_signal_ends_at_once(void **state) {
    (void)state;
    /* a reward program that does not answer blocks the step, so the first signal cannot end the run */
    put("kept", "earlier");
    const pid_t pid = run_start(GRPO "-x 900 -o $T/kept --reward command --reward-cmd 'touch $T/asked; sleep 30' "
                                     "--reward-timeout 25");
    const time_t end = time(NULL) + 120;
    while (access(files_path("asked"), F_OK)) {
        assert_true(time(NULL) < end);
        run_nap();
    }
    kill(pid, SIGTERM);
    sleep(2); /* a signal within a second of the first would count as the same one */
    assert_int_equal(kill(pid, 0), 0);
    kill(pid, SIGTERM);
    assert_int_equal(run_wait(pid, 120), 128 + SIGTERM);
    files_assert_content(files_path("kept"), "earlier", 7);
    unlink(files_path("asked")), unlink(files_path("kept"));
}

static void a_kill_leaves_what_was_there(void **state) {
    (void)state;
    /* the state is being written all the time, and the kill comes at any moment: the file must always be complete */
    sh(SFT "-x 3 -o $T/killed.bin --save-steps 1");
    for (int i = 0; i < 5; i++) {
        unlink(files_path("killed.jsonl"));
        const pid_t pid = run_start(SFT "-x 100000 -o $T/killed.bin --save-steps 1 --metrics $T/killed.jsonl");
        run_until(files_path("killed.jsonl"), 2 + 3 * i);
        kill(pid, SIGKILL);
        assert_int_equal(run_wait(pid, 120), 128 + SIGKILL);
        sh("./evaluate -c $T/killed.bin -i $T/chat.shard && ./evaluate -c $T/killed.bin.state -i $T/chat.shard");
        sh("rm -f $T/*.tmp");
    }
    /* a metrics line that a kill truncated is dropped when the run is resumed */
    sh("printf '{\"step\":99,\"ti' >> $T/killed.jsonl");
    sh(SFT "-x 100000 -o $T/killed.bin --save-steps 1 --metrics $T/killed.jsonl --resume $T/killed.bin.state "
           "& p=$!; sleep 0.5; kill $p; wait $p");
    for (int i = 0, n = metric_lines("killed.jsonl"); i < n; i += 50)
        assert_near(metric("killed.jsonl", i, "step"), i + 1, 0);
}

static void without_a_place_for_the_state(void **state) {
    (void)state;
    const pid_t pid = run_start(SFT "-x 100000 -o - --metrics $T/lost.jsonl");
    run_until(files_path("lost.jsonl"), 3);
    kill(pid, SIGTERM);
    assert_int_equal(run_wait(pid, 120), 0);
    assert_string_equal(out, "");
    assert_holds(said, "warning: no state is written: give --state FILE");
    assert_null(strstr(said, "--resume\n"));
}

static void states_that_do_not_fit(void **state) {
    (void)state;
    sh(SFT "-x 2 -o $T/x.bin --save-steps 1 --state $T/sft.state");
    sh(GRPO "-x 2 -o $T/x.bin --save-steps 1 --state $T/grpo.state");
    refused(1, SFT "-x 4 -o $T/kept --resume $T/base.bin", "base.bin: it is a model, not a training state");
    refused(1, SFT "-x 4 -o $T/kept --resume $T/grpo.state", "it is a state of train_grpo, not of train_sft");
    refused(1, GRPO "-x 4 -o $T/kept --resume $T/sft.state", "it is a state of train_sft, not of train_grpo");
    refused(1, SFT "-x 4 -i $T/other.shard -o $T/kept --resume $T/sft.state",
            "the state was made with a different shard than");
    sh("head -c 60000 $T/sft.state > $T/short.state");
    refused(1, SFT "-x 4 -o $T/kept --resume $T/short.state", "short.state: ");
    /* a resumed run must use the reference that the run started with */
    sh(GRPO "-x 2 -o $T/x.bin --save-steps 1 --state $T/kl.state --beta 0.1");
    run(1, GRPO "-x 4 -c $T/x.bin -o $T/y.bin --resume $T/kl.state --beta 0.1");
    assert_holds(said, "train_grpo: ");
    assert_holds(said, "x.bin: it is not the reference that the run began with\n");
    assert_int_equal(access(files_path("y.bin"), F_OK), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(sft_resumes),
                                       cmocka_unit_test(grpo_resumes),
                                       cmocka_unit_test(states_on_the_way),
                                       cmocka_unit_test(the_best_model_survives_a_stop),
                                       cmocka_unit_test(a_second_signal_ends_at_once),
                                       cmocka_unit_test(a_kill_leaves_what_was_there),
                                       cmocka_unit_test(without_a_place_for_the_state),
                                       cmocka_unit_test(states_that_do_not_fit)};
    return cmocka_run_group_tests_name("resume", tests, setup, models_teardown);
}
