/* test_off_policy_runs.c - ./train_grpo with demonstrations in the groups, as a user runs it: learning what the model cannot
 * do by itself, the metrics and the dump of a group, resuming, micro-batches, what is said and what is refused.
 *
 * Needs the trainers, data/make_shard, data/make_tasks and data/show. The task of most tests has six prompts "a=" ... "f=".
 * The model is fine-tuned to answer each with any of ten digits; the letter z, which it never draws, is right. */
#include "files.h"  /* files_path, text_of */
#include "models.h" /* assert_near, refused, json_line_of, models_setup, ... */
#include "run.h"    /* metric, sh, weights_gap, metric_mean, ... */
#include "shell.h"  /* assert_holds, said, put */

#define GRPO                                                                                                           \
    "./train_grpo -c $T/sft.bin -g 4 -p 6 -G 8 --micro-tokens 512 --sample-count 0 --lr-scheduler-type constant "

/* Writes tasks whose right answer is z; target: the rest of the row after the answer, with a prompt's letter for %c. */
static void tasks(const char *name, const char *target) {
    char path[40];
    snprintf(path, sizeof path, "%s.jsonl", name);
    FILE *f = fopen(files_path(path), "w");
    for (int p = 0; p < 6; p++) {
        fprintf(f, "{\"prompt\":\"%c=\",\"answer\":\"z\",\"task\":\"exact\"", 'a' + p);
        fprintf(f, "%s}\n", target);
    }
    if (fclose(f)) fail_msg("%s", path);
    sh("data/make_shard --quiet -i $T/%s.jsonl -o $T/%s.shard", name, name);
}

static int setup(void **state) {
    if (models_setup(state)) return 1;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    FILE *chat = fopen(files_path("chat.jsonl"), "w");
    for (int p = 0; p < 6; p++)
        for (int k = 0; k < 10; k++) fprintf(chat, "{\"prompt\":\"%c=\",\"completion\":\"%d\"}\n", 'a' + p, k);
    if (fclose(chat)) return 1;
    sh("data/make_shard --quiet -i $T/chat.jsonl -o $T/chat.shard");
    sh("./train_sft --micro-tokens 256 --batch-tokens 240 -i $T/chat.shard --layers 1 --width 32 --heads 2 --context 16 "
       "-o $T/sft.bin -x 60 -l 0.02");
    tasks("plain", "");
    tasks("text", ",\"target\":\"z\"");
    tasks("list", ",\"target\":[{\"role\":\"assistant\",\"content\":\"z\"},\"zzzzzzzz\",\"zz\",\"y\"]");
    return 0;
}

/* A model that sorts two digits writes two digits when it is given three: without demonstrations nothing is right, no group has
 * a gradient and the model stays as it is. With them it learns. */
static void demonstrations_teach(void **state) {
    (void)state;
    sh("data/make_tasks --task sort --items 2 --largest 9 --split all --count 80 --seed 11 --format chat -o $T/two.shard");
    sh("data/make_tasks --task sort --items 3 --largest 9 --count 500 --seed 12 --target-key target -o $T/three.shard");
    sh("./train_sft --layers 1 --width 32 --heads 2 --context 24 -i $T/two.shard -o $T/two.bin -x 150 --batch-tokens 1024 "
       "-l 5e-3");
    static const char *const how[] = {"", "--n-prefix 1",
                                      "--n-prefix 1 --off-policy-reshape no_reshape --loss-type grpo"};
    for (int i = 0; i < 3; i++) {
        sh("./train_grpo -c $T/two.bin -i $T/three.shard -o $T/x.bin -p 16 -G 8 -g 8 -x %d -l 3e-3 --micro-tokens 4096 "
           "--sample-count 0 --metrics $T/m.jsonl %s",
           i == 1 ? 250
           : i    ? 30
                  : 20,
           how[i]);
        if (i) {
            assert_true(metric("m.jsonl", 0, "off_policy/reward") == 1);
            assert_holds(said, "500 of 500 prompts have a demonstration, 500 in all; 0 prompts have none");
        }
        if (i == 1) {
            const double before = metric_mean("m.jsonl", 0, 5, "reward"),
                         after = metric_mean("m.jsonl", 240, 250, "reward");
            if (!(before < 0.02 && after > 0.2)) fail_msg("%s: reward %g before, %g after", how[i], before, after);
            assert_true(metric("m.jsonl", -1, "off_policy/prob") > metric("m.jsonl", 0, "off_policy/prob") + 0.2);
        } else if (i == 2) { /* f(p) = p; its gradient is small where p is, so that some runs begin to learn late */
            for (int step = 0; step < 30; step++)
                assert_near(metric("m.jsonl", step, "off_policy/ratio_mean"),
                            metric("m.jsonl", step, "off_policy/prob"), 0);
        } else {
            assert_true(metric_mean("m.jsonl", 0, 20, "reward") == 0 && weights_gap("two.bin", "x.bin") == 0);
            assert_holds(said,
                         "prompts have demonstrations in the field 'target', which are used only with --n-prefix");
        }
    }
}

/* A group of the first step: seven samples with reward 0 and a demonstration with 1. */
static void a_group_is_known(void **state) {
    (void)state;
    sh(GRPO "-i $T/text.shard -o $T/x.bin -x 1 -l 1e-3 --n-prefix 1 --metrics $T/m.jsonl --rollouts $T/d.jsonl "
            "--rollout-prompts 1 --report $T/d.html");
    char *text = text_of(files_path("d.jsonl"));
    int trained = 0;
    for (int i = 0; i < lines_of(text); i++) {
        json_t *line = json_line_of(text, i);
        const json_t *samples = json_object_get(line, "samples");
        const bool fixed = samples && !strcmp(json_text_of(line, "kind"), "fixed");
        for (size_t k = 0; k < json_array_size(samples); k++) {
            const json_t *s = json_array_get(samples, k);
            const bool given = !fixed && k == 7;
            assert_int_equal(json_is_true(json_object_get(s, "off_policy")), given);
            if (fixed) continue;
            /* mean 1/8, deviation sqrt(1/8) with n - 1, and the 1e-4 of the divisor */
            const double A = ((given ? 1 : 0) - 0.125) / (sqrt(0.125) + 1e-4);
            assert_near(json_number_of(s, "advantage"), A, 1e-3 * fabs(A));
            assert_near(json_number_of(s, "reward"), given, 0);
            assert_true(json_is_null(json_array_get(json_object_get(s, "sampler_logp"), 0)) == given);
            if (given) assert_string_equal(json_text_of(s, "text"), "z");
            trained += given;
        }
        json_decref(line);
    }
    free(text);
    assert_int_equal(trained, 2);
    sh("data/show $T/d.jsonl | grep -q 'demonstration right'");
    /* every completion has two tokens; the demonstration's are z and the end */
    assert_near(metric("m.jsonl", 0, "off_policy/tokens"), 1.0 / 8, 1e-9);
    assert_true(metric("m.jsonl", 0, "num_trained_tokens") == 6 * 8 * 2);
    assert_true(metric("m.jsonl", 0, "completions/mean_length") == 2);
    const double p = metric("m.jsonl", 0, "off_policy/prob"), f = metric("m.jsonl", 0, "off_policy/ratio_mean");
    assert_true(p > 0 && p < 1 && f > p && f < 1 / 1.1);
    assert_true(metric("m.jsonl", 0, "ratio/mean") == 1);
    assert_true(metric("m.jsonl", 0, "frac_reward_zero_std") == 0 && metric("m.jsonl", 0, "reward_std") == 0);
}

/* The samples of a group are those of a run without demonstrations, which the option leaves as it was. */
static void without_demonstrations_nothing_changes(void **state) {
    (void)state;
    static const char *const how[] = {"", "--num-iterations 2 --steps-per-generation 2 --beta 0.1 --entropy-coef 0.01"};
    for (int i = 0; i < 2; i++) {
        sh(GRPO "-i $T/plain.shard -o $T/a.bin -x 6 -l 1e-3 --reward random %s", how[i]);
        sh(GRPO "-i $T/text.shard -o $T/b.bin -x 6 -l 1e-3 --reward random %s", how[i]);
        assert_true(weights_gap("a.bin", "b.bin") == 0);
    }
    sh(GRPO "-i $T/plain.shard -o $T/a.bin -x 1 --rollouts $T/a.jsonl --rollout-prompts 0 --reward length=2");
    sh(GRPO
       "-i $T/text.shard -o $T/b.bin -x 1 --n-prefix 1 --rollouts $T/b.jsonl --rollout-prompts 0 --reward length=2");
    char *text[] = {text_of(files_path("a.jsonl")), text_of(files_path("b.jsonl"))};
    json_t *row[] = {json_line_of(text[0], 1), json_line_of(text[1], 1)};
    assert_int_equal(json_integer_value(json_object_get(row[0], "prompt_id")),
                     json_integer_value(json_object_get(row[1], "prompt_id")));
    for (size_t k = 0; k < 7; k++)
        assert_string_equal(json_text_of(json_array_get(json_object_get(row[0], "samples"), k), "text"),
                            json_text_of(json_array_get(json_object_get(row[1], "samples"), k), "text"));
    for (int i = 0; i < 2; i++) json_decref(row[i]), free(text[i]);
}

/* Several demonstrations, those that do not fit, and rows without any. */
static void several_demonstrations(void **state) {
    (void)state;
    sh(GRPO "-i $T/list.shard -o $T/x.bin -x 2 --n-prefix 2 --metrics $T/m.jsonl");
    assert_holds(said, "6 demonstrations do not fit into --max-completion-length 4 or the context, and are left out");
    assert_holds(said, "6 demonstrations are not used: --n-prefix takes the first 2 of a prompt");
    assert_holds(said, "6 of 6 prompts have a demonstration, 12 in all");
    /* z and zz with their ends: 5 of 6 * 2 + 5 tokens; z is right */
    assert_near(metric("m.jsonl", 0, "off_policy/tokens"), 5.0 / 17, 1e-9);
    assert_near(metric("m.jsonl", 0, "off_policy/reward"), 0.5, 0);
    sh("(head -n 2 $T/text.jsonl; tail -n 4 $T/plain.jsonl) | data/make_shard --quiet -i - -o $T/some.shard");
    sh(GRPO "-i $T/some.shard -o $T/x.bin -x 1 --n-prefix 1 --metrics $T/m.jsonl");
    assert_holds(said, "2 of 6 prompts have a demonstration, 2 in all; 4 prompts have none");
    assert_near(metric("m.jsonl", 0, "off_policy/tokens"), 2.0 / 48, 1e-9);
    assert_near(metric("m.jsonl", 0, "frac_reward_zero_std"), 4.0 / 6, 1e-9);
    sh("data/make_tasks --task sort --items 2 --largest 9 --count 40 --target-key worked --noise 0.5 -o $T/sort.shard");
    sh("./train_grpo -c $T/sft.bin -i $T/sort.shard -o $T/x.bin -g 4 -p 20 -G 2 -x 2 --n-prefix 1 --target-key worked "
       "--sample-count 0 --max-prompt-length 12 --metrics $T/m.jsonl");
    const double right = (metric("m.jsonl", 0, "off_policy/reward") + metric("m.jsonl", 1, "off_policy/reward")) / 2;
    assert_true(right > 0.2 && right < 0.8); /* 40 draws of probability 0.5 */
}

/* A demonstration without a reward has the advantage 0, and the others are compared without it. */
static void a_demonstration_without_a_reward(void **state) {
    (void)state;
    put("reward.sh", "sed -u -e 's/.*\"completion\": *\"z\".*/nan/' -e '/^nan$/!s/.*/0.5/'\n");
    sh(GRPO
       "-i $T/text.shard -o $T/x.bin -x 1 -l 1e-3 --n-prefix 1 --reward-cmd 'sh $T/reward.sh' --metrics $T/m.jsonl");
    assert_true(metric("m.jsonl", 0, "grad_norm") == 0 && metric("m.jsonl", 0, "reward") == 0.5);
    assert_true(isnan(metric("m.jsonl", 0, "off_policy/reward")));
    assert_holds(said, "the rewards of every group are all equal: no gradient");
}

/* The loss and its gradient do not depend on micro-batches, in which completions share a copy of their prompt; a resumed run
 * ends with the same bytes. */
static void memory_and_resuming(void **state) {
    (void)state;
    static const char *const how[] = {"", "--num-iterations 2 --steps-per-generation 3 --beta 0.1 --loss-type gspo",
                                      "--loss-type dr_grpo --entropy-coef 0.01 --scale-rewards none",
                                      "--loss-type cispo --dynamic-sampling --num-iterations 2"};
    for (int i = 0; i < 4; i++) {
        char command[600];
        for (int k = 0; k < 3; k++)
            sh(GRPO "-i $T/list.shard -x 1 --n-prefix 2 -o $T/x.bin --metrics $T/m%d.jsonl %s --micro-tokens %s", k,
               how[i],
               k == 2 ? "16"
               : k    ? "20"
                      : "512");
        for (int k = 1; k < 3; k++) {
            assert_near(metric("m0.jsonl", 0, "loss"), metric(k == 2 ? "m2.jsonl" : "m1.jsonl", 0, "loss"), 1e-6);
            assert_near(metric("m0.jsonl", 0, "grad_norm"), metric(k == 2 ? "m2.jsonl" : "m1.jsonl", 0, "grad_norm"),
                        1e-5 * metric("m0.jsonl", 0, "grad_norm"));
        }
        assert_true(metric("m0.jsonl", 0, "grad_norm") > 0);
        snprintf(command, sizeof command, GRPO "-i $T/list.shard -l 1e-2 --n-prefix 2 %s", how[i]);
        assert_resumes(command, 12, "bin");
    }
    char command[600];
    snprintf(command, sizeof command,
             GRPO "-i $T/list.shard -l 1e-2 --n-prefix 1 %s -x 12 -o $T/kept --resume $T/run.state", how[3]);
    run(1, command);
    assert_holds(said, "the run that wrote it had other options: --n-prefix 2 (here 1)");
}

static void what_is_refused(void **state) {
    (void)state;
    static const char *const others[] = {"--reward none --teacher $T/sft.bin",
                                         "--teacher $T/sft.bin",
                                         "--beta 0.1 --kl-estimator exact",
                                         "--beta 0.1 --kl-in reward",
                                         "--loss-type clip_cov",
                                         "--advantage-estimator optimal_token_baseline",
                                         "--num-remains-in-group 4",
                                         "--top-entropy-quantile 0.5",
                                         "--positive-nll-coef 0.1",
                                         "--llds-coef 0.1 --num-iterations 2",
                                         "--tools calculator",
                                         "--agent-cmd true"};
    char command[500];
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        snprintf(command, sizeof command, GRPO "-i $T/text.shard -o $T/kept --n-prefix 1 %s", others[i]);
        refused(2, command, "--n-prefix: cannot be combined with --");
    }
    refused(2, GRPO "-i $T/text.shard -o $T/kept --n-prefix 8", "leave no sample among the 8 completions");
    refused(2, GRPO "-i $T/text.shard -o $T/kept --target-key x", "--target-key: used only with --n-prefix");
    refused(2, GRPO "-i $T/text.shard -o $T/kept --off-policy-gamma 1",
            "--off-policy-gamma: used only with --n-prefix");
    refused(2, GRPO "-i $T/text.shard -o $T/kept --n-prefix 1 --off-policy-reshape no_reshape --off-policy-gamma 1",
            "--off-policy-gamma: used only with");
    refused(1, GRPO "-i $T/plain.shard -o $T/kept --n-prefix 1", "no prompt has the field 'target'");
    tasks("number", ",\"target\":24");
    refused(1, GRPO "-i $T/number.shard -o $T/kept --n-prefix 1", "prompt 1: field 'target' has a number");
    refused_output("kept", 2, "data/make_tasks --task bigmul --target-key target -o $T/kept", "--target-key");
    refused_output("kept", 2, "data/make_tasks --task add --format chat --target-key target -o $T/kept",
                   "--target-key");
    refused_output("kept", 2, "data/make_tasks --task add --target-key answer -o $T/kept", "--target-key");
    refused_output("kept", 1, "data/make_tasks --task countdown --target-key target -o $T/kept",
                   "have a field 'target'");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(demonstrations_teach),
                                       cmocka_unit_test(a_group_is_known),
                                       cmocka_unit_test(without_demonstrations_nothing_changes),
                                       cmocka_unit_test(several_demonstrations),
                                       cmocka_unit_test(a_demonstration_without_a_reward),
                                       cmocka_unit_test(memory_and_resuming),
                                       cmocka_unit_test(what_is_refused)};
    return cmocka_run_group_tests_name("off_policy_runs", tests, setup, models_teardown);
}
