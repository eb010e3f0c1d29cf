/* test_output_runs.c - what a run prints and leaves: the file of its options, which reproduces it, and --quiet.
 *
 * Needs the trainers, data/make_prefs, data/make_tasks and data/make_shard. */
#include "models.h" /* lines_of, models_setup, models_teardown */
#include "run.h"    /* sh, assert_same_file */
#include "shell.h"  /* said, assert_holds, run, out */

#define TINY "--layers 1 --width 32 --heads 2 --context 64 --micro-tokens 512 "

static int setup(void **state) {
    if (models_setup(state)) return 1;
    sh("data/make_tasks --task sort --items 2 --count 60 --format chat -o $T/chat.shard");
    sh("data/make_tasks --task sort --items 2 --count 60 -o $T/tasks.shard");
    sh("data/make_prefs --count 60 --rule char=a:1 | data/make_shard --quiet -i - -o $T/prefs.shard");
    sh("./train_sft " TINY "-i $T/chat.shard -o $T/base.bin -x 2 --quiet");
    return 0;
}

/* Runs the command, then again from the file of options that it left, and compares the models. */
static void reproduces(const char *command, const char *model) {
    char line[600];
    snprintf(line, sizeof line, "./%s -o $T/first.%s", command, model);
    sh("%s", line);
    snprintf(line, sizeof line, "./%.*s --config $T/first.%s.yaml -o $T/second.%s", (int)strcspn(command, " "), command,
             model, model);
    sh("%s", line);
    char a[32], b[32];
    snprintf(a, sizeof a, "first.%s", model);
    snprintf(b, sizeof b, "second.%s", model);
    assert_same_file(a, b);
}

static void options_reproduce_the_run(void **state) {
    (void)state;
    reproduces("train_sft " TINY
               "-i $T/chat.shard -j $T/chat.shard --lr 0.0012345678901234567 -x 3 --neftune_noise_alpha 5",
               "safetensors");
    reproduces("train_sft -c $T/base.bin -i $T/chat.shard --lora-rank 2 --num-train-epochs 0.5 --batch-tokens 64",
               "bin");
    reproduces("train_rm -c $T/base.bin -i $T/prefs.shard -j $T/prefs.shard -x 2 --no-use-margin", "bin");
    reproduces("train_dpo -c $T/base.bin -i $T/prefs.shard -x 2 --loss-type sigmoid,sft --loss-weights 1,0.2", "bin");
    reproduces("train_grpo -c $T/base.bin -i $T/tasks.shard -x 2 -p 2 -G 2 -g 4", "bin");
    reproduces("train_grpo -c $T/base.bin -i $T/tasks.shard -x 2 -p 2 -G 2 -g 4 --loss-type gspo --epsilon 3e-4",
               "bin");
    reproduces("train_ppo -c $T/base.bin -i $T/tasks.shard --reward verify -x 2 -p 4 -g 4", "bin");
    reproduces("train_ppo -c $T/base.bin -i $T/tasks.shard --reward verify -x 2 -p 4 -g 4 --algo rloo", "bin");
}

static void the_command_line_overrides_the_file(void **state) {
    (void)state;
    sh("./train_sft " TINY "-i $T/chat.shard -o $T/a.bin -x 3 --seed 5");
    sh("./train_sft " TINY "-i $T/chat.shard -o $T/b.bin -x 3 --seed 6");
    sh("./train_sft --config $T/a.bin.yaml -o $T/c.bin --seed 6");
    assert_same_file("b.bin", "c.bin");
    /* the options of a resumed run describe the whole run */
    sh("./train_sft " TINY "-i $T/chat.shard -o $T/d.bin -x 3 --seed 6 --save-steps 2");
    sh("./train_sft --config $T/d.bin.yaml --resume $T/d.bin.state");
    sh("./train_sft --config $T/d.bin.yaml -o $T/e.bin");
    assert_same_file("b.bin", "e.bin");
    /* a file that the user wrote is not replaced */
    sh("printf '# mine\\nseed: 6\\n' >$T/g.bin.yaml");
    sh("./train_sft --config $T/g.bin.yaml " TINY "-i $T/chat.shard -o $T/g.bin -x 3");
    assert_same_file("b.bin", "g.bin");
    run(0, "cat $T/g.bin.yaml");
    assert_string_equal(out, "# mine\nseed: 6\n");
    run(0, "./train_sft " TINY "-i $T/chat.shard -o - -x 1 >$T/f.safetensors; ls $T"); /* no file next to a stream */
    assert_null(strstr(out, "f.safetensors.yaml"));
}

static void quiet_prints_the_last_step_and_warnings(void **state) {
    (void)state;
    run(0, "./train_sft " TINY "-i $T/chat.shard -j $T/chat.shard -o $T/a.bin -x 3 --eval-steps 1 --quiet");
    assert_int_equal(lines_of(said), 1);
    assert_holds(said, "step     3/3 | loss");
    assert_string_equal(out, "");
    run(0, "./train_grpo -c $T/base.bin -i $T/tasks.shard --reward random:0 -o $T/a.bin -x 2 -p 2 -G 2 -g 4 --quiet");
    for (int i = 0; i + 1 < lines_of(said); i++) assert_holds(said, "train_grpo: warning: ");
    assert_holds(said, "train_grpo: warning: the rewards of every group are all equal: no gradient\n");
    assert_holds(said, "step     2/2 | loss");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_reproduce_the_run),
        cmocka_unit_test(the_command_line_overrides_the_file),
        cmocka_unit_test(quiet_prints_the_last_step_and_warnings),
    };
    return cmocka_run_group_tests_name("outputs of runs", tests, setup, models_teardown);
}
