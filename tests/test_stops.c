/* test_stops.c - what remains of a run that a signal or a failure of its surroundings ends.
 *
 * Every signal that announces an end leaves a training state, from which the run goes on to the same bytes; so does a
 * reward program that fails and a full disk under the metrics. No path serves two things, two runs do not share an
 * output, and a kill leaves neither temporary files nor reward programs. Needs train_sft, train_grpo and
 * data/make_shard. */
#include "files.h"  /* files_path */
#include "models.h" /* refused, models_setup, models_teardown */
#include "run.h"    /* sh, run_start, run_until, run_wait, ... */
#include "shell.h"  /* assert_holds, said, run, put */
#include <glob.h>

#define SFT  "./train_sft -c $T/base.bin -i $T/chat.shard -l 1e-3 --batch-tokens 64 --lr-scheduler-type constant "
#define GRPO "./train_grpo -c $T/base.bin -i $T/tasks.shard -l 1e-3 -p 2 -G 2 -g 4 --sample-count 0 --seed 3 "

static int setup(void **state) {
    if (models_setup(state)) return 1;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    FILE *chat = fopen(files_path("chat.jsonl"), "w"), *tasks = fopen(files_path("tasks.jsonl"), "w");
    for (int k = 0; k < 10; k++) {
        fprintf(chat, "{\"prompt\":\"%d=\",\"completion\":\"%d\"}\n", k, (3 * k + 1) % 10);
        fprintf(tasks, "{\"prompt\":\"%d=\",\"answer\":\"%d\",\"task\":\"exact\"}\n", k, (3 * k + 1) % 10);
    }
    if (fclose(chat) | fclose(tasks)) return 1;
    sh("data/make_shard --quiet -i $T/chat.jsonl -o $T/chat.shard");
    sh("data/make_shard --quiet -i $T/tasks.jsonl -o $T/tasks.shard");
    sh("./train_sft --layers 1 --width 16 --heads 1 --context 16 -i $T/chat.shard -x 3 --batch-tokens 64 "
       "-o $T/base.bin");
    /* a reward program that ends after $T/limit answers; its score depends on the completion alone */
    put("judge.sh",
        "n=0\nwhile read -r line; do n=$((n + 1)); [ $n -gt $(cat $T/limit) ] && exit 3; echo $((${#line} % 3)); done\n");
    return 0;
}

static int count_of(const char *pattern) {
    glob_t found = {0};
    glob(files_path(pattern), 0, NULL, &found);
    const int n = (int)found.gl_pathc;
    globfree(&found);
    return n;
}

/* Every signal that announces an end leaves the state, also if it comes twice within a second. */
static void signals_leave_a_state(void **state) {
    (void)state;
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ, SIGPWR};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        unlink(files_path("s.state")), unlink(files_path("s.jsonl"));
        const pid_t pid = run_start(SFT "-x 1000000 -o $T/s --metrics $T/s.jsonl");
        run_until(files_path("s.jsonl"), 2);
        kill(pid, signals[i]);
        kill(pid, signals[i]);
        assert_int_equal(run_wait(pid, 120), 0);
        assert_holds(said, "stopped by a signal after step ");
        assert_int_equal(access(files_path("s.state"), R_OK), 0);
    }
    run(124, "timeout 1 " SFT "-x 1000000 -o $T/s --resume $T/s.state"); /* it is a state that can be resumed */
}

/* nohup: a run that ignores hangups goes on. */
static void an_ignored_hangup_stays_ignored(void **state) {
    (void)state;
    unlink(files_path("s.jsonl"));
    signal(SIGHUP, SIG_IGN);
    const pid_t pid = run_start(SFT "-x 1000000 -o $T/s --metrics $T/s.jsonl");
    signal(SIGHUP, SIG_DFL);
    run_until(files_path("s.jsonl"), 2);
    kill(pid, SIGHUP);
    const int before = metric_lines("s.jsonl");
    run_until(files_path("s.jsonl"), before + 20);
    kill(pid, SIGTERM);
    assert_int_equal(run_wait(pid, 120), 0);
}

/* timeout(1) signals its child and then the group. */
static void timeout_leaves_a_state(void **state) {
    (void)state;
    unlink(files_path("s.state"));
    run(124, "timeout -s INT 2 " SFT "-x 1000000 -o $T/s");
    assert_int_equal(access(files_path("s.state"), R_OK), 0);
}

/* A run whose reward program ends at a later step, and which goes on with another one, gives the bytes of a run without
 * failure. */
static void a_dead_reward_program(void **state) {
    (void)state;
    put("limit", "1000");
    sh(GRPO "-x 6 -o $T/whole --reward-cmd 'sh $T/judge.sh'");
    put("limit", "13");
    run(1, GRPO "-x 6 -o $T/part --reward-cmd 'sh $T/judge.sh'");
    assert_holds(said, "state written to ");
    assert_holds(said, "judge.sh': ended with exit status 3 after 1 of 4 answers");
    assert_int_equal(access(files_path("part"), F_OK), -1);
    put("limit", "1000");
    sh(GRPO "-x 6 -o $T/part --reward-cmd 'sh $T/judge.sh' --resume $T/part.state");
    assert_same_file("whole", "part");
    /* garbage instead of a number */
    run(1, GRPO "-x 6 -o $T/part --state $T/garbage.state --reward-cmd \"sed -u '9s/.*/x/;s/^{.*/1/'\"");
    assert_holds(said, "state written to ");
    assert_holds(said, "is 'x', must be a number or null");
    assert_int_equal(access(files_path("garbage.state"), R_OK), 0);
    /* before the first step there is nothing to keep */
    run(1, GRPO "-x 6 -o $T/part --state $T/none.state --reward-cmd 'exit 4'");
    assert_int_equal(access(files_path("none.state"), F_OK), -1);
}

/* A full disk under the metrics ends the run with its state, from which it goes on elsewhere. */
static void a_full_disk(void **state) {
    (void)state;
    sh(SFT "-x 5 -o $T/whole");
    run(1, SFT "-x 5 -o $T/part --metrics /dev/full");
    assert_holds(said, "state written to ");
    assert_holds(said, "/dev/full: cannot write: No space left on device\n");
    sh(SFT "-x 5 -o $T/part --resume $T/part.state");
    assert_same_file("whole", "part");
    /* the model itself cannot be written */
    run(1, SFT "-x 5 -o /dev/full --state $T/last.state");
    assert_holds(said, "/dev/full: cannot write: No space left on device\n");
    assert_int_equal(access(files_path("last.state"), R_OK), 0);
    /* the path of the state is tried before the run */
    refused(1, SFT "-x 5 -o $T/kept --state $T/no/such.state", "no/such.state: cannot create a temporary file");
}

static void one_path_for_two_things(void **state) {
    (void)state;
    put("kept", "earlier");
    sh("ln -s chat.shard $T/link && ln $T/chat.shard $T/hard && mkdir $T/folder");
    refused(2, SFT "-x 2 -o $T/chat.shard", "--input and --output: both are ");
    refused(2, SFT "-x 2 -o $T/folder/../chat.shard", "--input and --output: both are ");
    refused(2, SFT "-x 2 -o $T/link", "--input and --output: both are ");
    refused(2, SFT "-x 2 -o $T/hard", "--input and --output: both are ");
    refused(2, SFT "-x 2 -o $T/base.bin", "--checkpoint and --output: both are ");
    refused(2, SFT "-x 2 -o $T/new --state $T/./new", "--output and --state: both are ");
    refused(2, SFT "-x 2 -o $T/new --report $T/new.state", "--report and --state: both are ");
    refused(2, SFT "-x 2 -o $T/new --metrics $T/m --report $T/m", "--metrics and --report: both are ");
    refused(2, SFT "-x 2 -o $T/new --metrics $T/m.jsonl --report $T/m.samples.jsonl", "--report and --metrics: both ");
    refused(2, SFT "-x 2 -o $T/new -j $T/chat.shard --best $T/new", "--output and --best: both are ");
    sh("ln -sf new $T/dangling");
    refused(2, SFT "-x 2 -o $T/new --report $T/dangling", "--output and --report: both are ");
    sh(SFT "-x 2 -o /dev/null --metrics /dev/null --report /dev/null"); /* devices are not files */
    sh(SFT "-x 2 -o $T/new --save-steps 1 && " SFT "-x 3 -o $T/new --resume $T/new.state");
    sh("rm -f $T/link $T/hard $T/dangling $T/new*");
}

/* A second run with the output of a living one is refused; after a kill the output is free. */
static void two_runs_with_one_output(void **state) {
    (void)state;
    unlink(files_path("s.jsonl"));
    const pid_t pid = run_start(SFT "-x 1000000 -o $T/s --metrics $T/s.jsonl");
    run_until(files_path("s.jsonl"), 2);
    run(1, SFT "-x 2 -o $T/./s 2>$T/second; status=$?; cat $T/second >&2; exit $status");
    assert_holds(said, "another run is writing it");
    run(1, SFT "-x 2 -o $T/other --metrics $T/s.jsonl");
    assert_holds(said, "--metrics ");
    kill(pid, SIGKILL);
    run_wait(pid, 120);
    sh(SFT "-x 2 -o $T/s");
}

/* kill -9 in the middle of a write leaves a temporary file, which the next run removes, but not that of a living one. */
static void temporary_files_of_dead_runs(void **state) {
    (void)state;
    int left = 0;
    for (int i = 0; i < 20 && !left; i++) {
        unlink(files_path("k.jsonl"));
        const pid_t pid = run_start(SFT "-x 1000000 -o $T/k --save-steps 1 --metrics $T/k.jsonl");
        run_until(files_path("k.jsonl"), 2 + i);
        kill(pid, SIGKILL);
        run_wait(pid, 120);
        left = count_of("k.*.tmp");
    }
    assert_true(left > 0); /* the state is written all the time */
    sh("touch $T/k.backup.tmp");
    sh(SFT "-x 2 -o $T/k");
    assert_int_equal(count_of("k.*.tmp"), 1);
    assert_int_equal(access(files_path("k.backup.tmp"), F_OK), 0);
}

/* A reward program that never reads, and what it started, end with a killed trainer. */
static void no_orphans(void **state) {
    (void)state;
    const pid_t pid = run_start(GRPO "-x 9 -o $T/o --reward command --reward-timeout 100 "
                                     "--reward-cmd 'sleep 871 & echo $! $$ >$T/pids; sleep 872'");
    const time_t end = time(NULL) + 60;
    long child = 0, parent = 0;
    while (!parent) {
        FILE *f = fopen(files_path("pids"), "r");
        if (f && fscanf(f, "%ld %ld", &child, &parent) != 2) parent = 0;
        if (f) fclose(f);
        assert_true(time(NULL) < end);
        run_nap();
    }
    assert_int_equal(kill((pid_t)child, 0), 0);
    kill(pid, SIGKILL);
    run_wait(pid, 60);
    for (int i = 0; i < 20000 && (!kill((pid_t)child, 0) || !kill((pid_t)parent, 0)); i++) run_nap();
    assert_int_equal(kill((pid_t)child, 0), -1);
    assert_int_equal(kill((pid_t)parent, 0), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(signals_leave_a_state),
                                       cmocka_unit_test(an_ignored_hangup_stays_ignored),
                                       cmocka_unit_test(timeout_leaves_a_state),
                                       cmocka_unit_test(a_dead_reward_program),
                                       cmocka_unit_test(a_full_disk),
                                       cmocka_unit_test(one_path_for_two_things),
                                       cmocka_unit_test(two_runs_with_one_output),
                                       cmocka_unit_test(temporary_files_of_dead_runs),
                                       cmocka_unit_test(no_orphans)};
    return cmocka_run_group_tests_name("stops", tests, setup, models_teardown);
}
