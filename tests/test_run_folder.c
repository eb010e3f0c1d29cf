/* test_run_folder.c - the folder of --output-dir: what it holds, which one is refused, and which states it keeps.
 *
 * A run that is killed and resumed ends in the bytes of an uninterrupted one, with the same files in its folder. Needs
 * train_sft, train_ppo and data/make_shard. */
#include "files.h"  /* files_path */
#include "models.h" /* lines_of, models_setup, models_teardown */
#include "run.h"    /* sh, assert_same_file, metric, metric_lines, ... */
#include "shell.h"  /* run, said, assert_holds, out */

#define SFT                                                                                                            \
    "./train_sft --layers 1 --width 16 --heads 1 --context 16 -i $T/chat.shard -l 1e-3 --batch-tokens 64 "             \
    "--lr-scheduler-type constant -q "

#define PPO                                                                                                            \
    "./train_ppo -c $T/base --critic $T/base -i $T/tasks.shard --reward verify -p 2 -G 2 -g 4 --sample-count 0 "       \
    "-l 1e-3 --lr-scheduler-type constant -q --save-steps 1 --save-total-limit 1 -x 6 "

static int setup(void **state) {
    if (models_setup(state)) return 1;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    FILE *chat = fopen(files_path("chat.jsonl"), "w");
    for (int k = 0; k < 10; k++) fprintf(chat, "{\"prompt\":\"%d=\",\"completion\":\"%d\"}\n", k, (3 * k + 1) % 10);
    if (fclose(chat)) return 1;
    sh("data/make_shard --quiet -i $T/chat.jsonl -o $T/chat.shard");
    return 0;
}

/* Checks the names in a folder, separated by blanks. */
static void assert_folder(const char *folder, const char *names) {
    char command[200];
    snprintf(command, sizeof command, "ls -A $T/%s | LC_ALL=C sort -V | tr '\\n' ' '", folder);
    run(0, command);
    assert_string_equal(out, names);
}

static void the_files_of_a_run(void **state) {
    (void)state;
    sh(SFT "-x 4 -o $T/plain.safetensors --metrics $T/plain.jsonl");
    sh(SFT "-x 4 --output-dir $T/new/run/ --save-steps 2");
    assert_folder("new/run",
                  "checkpoint-2 checkpoint-4 metrics.jsonl model.safetensors model.safetensors.yaml report.html ");
    assert_same_file("plain.safetensors", "new/run/model.safetensors");
    assert_int_equal(metric_lines("new/run/metrics.jsonl"), 4);
    for (int i = 0; i < 4; i++)
        assert_true(metric("new/run/metrics.jsonl", i, "loss") == metric("plain.jsonl", i, "loss"));
    /* the file of the options gives another folder all of its files */
    sh("./train_sft --config $T/new/run/model.safetensors.yaml --output-dir $T/second 2>$T/log");
    assert_folder("second",
                  "checkpoint-2 checkpoint-4 metrics.jsonl model.safetensors model.safetensors.yaml report.html ");
    assert_same_file("plain.safetensors", "second/model.safetensors");
    /* an option overrides the file of the folder */
    sh(SFT
       "-x 4 --output-dir $T/third -o $T/own.safetensors --metrics $T/own.jsonl --report $T/own.html --state $T/own");
    assert_folder("third", "");
    assert_same_file("plain.safetensors", "own.safetensors");
}

static void a_folder_of_another_run(void **state) {
    (void)state;
    sh("mkdir $T/used && echo mine >$T/used/notes");
    sh(SFT "-x 4 --output-dir $T/used --save-steps 1");
    run(1, SFT "-x 4 --output-dir $T/used");
    assert_holds(said,
                 "used: it holds the files of another run; give another folder, --resume to continue that run, or "
                 "--overwrite-output-dir\n");
    assert_int_equal(lines_of(said), 1);
    run(1, SFT "-x 4 --output-dir $T/used --resume $T/new/run/checkpoint-2"); /* the state of another folder */
    assert_holds(said, "it holds the files of another run");
    /* files of the user stay; what a killed run left does not */
    sh("cd $T/used && touch checkpoint-3.txt checkpoint-3.critic-3 checkpoint-9.critic-9.llmc-AbCd12.tmp");
    sh(SFT "-x 2 --output-dir $T/used --save-steps 2 --overwrite-output-dir");
    assert_folder("used", "checkpoint-2 checkpoint-3.txt metrics.jsonl model.safetensors model.safetensors.yaml notes "
                          "report.html ");
    run(1, SFT "-x 4 --output-dir $T/chat.shard");
    assert_holds(said, "--output-dir ");
    assert_holds(said, "chat.shard: it is not a folder\n");
    run(2, SFT "-x 4 --output-dir $T/used --resume --overwrite-output-dir");
    run(2, SFT "-x 4 -o $T/x --save-steps 1 --save-total-limit 1");
    assert_holds(said, "--save-total-limit: used only with --output-dir and --save-steps");
    run(1, SFT "-x 4 --output-dir $T/empty --resume");
    assert_holds(said, "empty has no training state");
    /* A run that is refused before its first step does not occupy the folder. */
    sh("cp $T/chat.shard $T/more.shard");
    run(1, SFT "-x 4 --output-dir $T/refused -i $T/more.shard:0.01x");
    assert_holds(said, "more.shard: 0.01x of its 10 records is none");
    sh(SFT "-x 4 --output-dir $T/refused -i $T/more.shard:0.1x");
}

/* The newest states stay, and that of the best model; what the run did not write stays, too. */
static void the_limit_of_states(void **state) {
    (void)state;
    sh("mkdir $T/few && touch $T/few/checkpoint-1.txt $T/few/checkpoint-02 $T/few/checkpoint");
    sh(SFT "-x 9 --output-dir $T/few --save-steps 2 --save-total-limit 2");
    assert_folder("few", "checkpoint checkpoint-1.txt checkpoint-02 checkpoint-6 checkpoint-8 metrics.jsonl "
                         "model.safetensors model.safetensors.yaml report.html ");
    /* with this learning rate the loss is lowest after the first evaluation */
    sh(SFT "-x 8 --output-dir $T/best --save-steps 2 --save-total-limit 1 -l 9 -j $T/chat.shard --eval-steps 2");
    int best = 0;
    for (int i = 1; i < 8; i += 2)
        if (!best || metric("best/metrics.jsonl", i, "eval_loss") < metric("best/metrics.jsonl", best - 1, "eval_loss"))
            best = i + 1;
    assert_true(best < 8);
    char names[200];
    snprintf(names, sizeof names,
             "best.safetensors checkpoint-%d checkpoint-8 metrics.jsonl model.safetensors model.safetensors.yaml "
             "report.html ",
             best);
    assert_folder("best", names);
}

/* kill -9 at several moments, then --resume: the same model and the same files as without. */
static void killed_and_resumed(void **state) {
    (void)state;
    sh(SFT "-x 120 --output-dir $T/whole --save-steps 3 --save-total-limit 2");
    for (int i = 0; i < 3; i++) {
        sh("rm -rf $T/part");
        const pid_t pid = run_start(SFT "-x 120 --output-dir $T/part --save-steps 3 --save-total-limit 2");
        run_until(files_path("part/metrics.jsonl"), 8 + 13 * i);
        kill(pid, SIGKILL);
        run_wait(pid, 120);
        assert_int_equal(access(files_path("part/model.safetensors"), F_OK), -1);
        sh(SFT "-x 120 --output-dir $T/part --save-steps 3 --save-total-limit 2 --resume");
        assert_same_file("whole/model.safetensors", "part/model.safetensors");
        assert_same_file("whole/checkpoint-120", "part/checkpoint-120");
        assert_int_equal(metric_lines("part/metrics.jsonl"), 120);
        assert_folder("part", "checkpoint-117 checkpoint-120 metrics.jsonl model.safetensors "
                              "model.safetensors.yaml report.html ");
    }
}

/* The critic of a removed state is removed, too. */
static void states_with_a_critic(void **state) {
    (void)state;
    FILE *tasks = fopen(files_path("tasks.jsonl"), "w");
    for (int k = 0; k < 10; k++)
        fprintf(tasks, "{\"prompt\":\"%d=\",\"answer\":\"%d\",\"task\":\"exact\"}\n", k, (3 * k + 1) % 10);
    assert_int_equal(fclose(tasks), 0);
    sh("data/make_shard --quiet -i $T/tasks.jsonl -o $T/tasks.shard");
    sh(SFT "-x 1 -o $T/base");
    sh(PPO "--output-dir $T/whole_critic");
    assert_folder("whole_critic", "checkpoint-6 checkpoint-6.critic-6 metrics.jsonl model.safetensors "
                                  "model.safetensors.yaml report.html ");
    sh(PPO "--output-dir $T/critic -x 3");
    assert_folder("critic", "checkpoint-3 checkpoint-3.critic-3 metrics.jsonl model.safetensors "
                            "model.safetensors.yaml report.html ");
    sh(PPO "--output-dir $T/critic --resume");
    assert_same_file("whole_critic/model.safetensors", "critic/model.safetensors");
    assert_folder("critic", "checkpoint-6 checkpoint-6.critic-6 metrics.jsonl model.safetensors "
                            "model.safetensors.yaml report.html ");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_files_of_a_run), cmocka_unit_test(a_folder_of_another_run),
                                       cmocka_unit_test(the_limit_of_states), cmocka_unit_test(states_with_a_critic),
                                       cmocka_unit_test(killed_and_resumed)};
    return cmocka_run_group_tests_name("run_folder", tests, setup, models_teardown);
}
