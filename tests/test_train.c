/* test_train.c - ./train_sft and ./train_grpo as a user runs them, on models of one layer: the chain of stages through
 * files and pipes, learning, the effect of each option.
 *
 * Needs all programs. Resuming is tested in test_resume.c, bad input in test_badinput.c, the exact optimum in
 * test_optimum.c.
 *
 * The task has six prompts "a=" ... "f=". The model is fine-tuned to answer each with any of ten digits; one is
 * right. */
#include "../llmc/base/error.h"       /* Error */
#include "../llmc/base/io.h"          /* XXH3_64bits */
#include "../llmc/cpu/cpu.h"          /* backend_cpu */
#include "../llmc/model/backend.h"    /* weights_at */
#include "../llmc/model/model.h"      /* Model, model_free */
#include "../llmc/model/model_file.h" /* model_load, model_save */
#include "../llmc/model/model_load.h" /* ModelFile, model_file_free */
#include "../llmc/model/tensors.h"    /* TENSOR_lnfb, TENSOR_wte */
#include "files.h"                    /* files_path, text_of, files_assert_content, files_get */
#include "models.h"                   /* assert_near, refused, json_text_of, json_line_of, ... */
#include "run.h"                      /* metric, sh, weights_gap, metric_mean, ... */
#include "shell.h"                    /* out, assert_holds, said, put, ... */

#define SFT "./train_sft --micro-tokens 256 --batch-tokens 240 -i $T/chat.shard "
#define NEW "--layers 1 --width 32 --heads 2 --context 16 "
#define GRPO_ON(shard)                                                                                                 \
    "./train_grpo -c $T/sft.bin -i $T/" shard " -g 4 -p 6 -G 16 --micro-tokens 512 --sample-count 0 "                  \
    "--lr-scheduler-type constant "
#define GRPO GRPO_ON("tasks.shard")

static int setup(void **state) {
    if (models_setup(state)) return 1;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    FILE *chat = fopen(files_path("chat.jsonl"), "w"), *tasks = fopen(files_path("tasks.jsonl"), "w");
    for (int p = 0; p < 6; p++) {
        for (int k = 0; k < 10; k++) fprintf(chat, "{\"prompt\":\"%c=\",\"completion\":\"%d\"}\n", 'a' + p, k);
        fprintf(tasks, "{\"prompt\":\"%c=\",\"answer\":\"%d\",\"task\":\"exact\"}\n", 'a' + p, (3 * p + 1) % 10);
    }
    if (fclose(chat) | fclose(tasks)) return 1;
    sh("data/make_shard --quiet -i $T/chat.jsonl -o $T/chat.shard");
    sh("data/make_shard --quiet -i $T/tasks.jsonl -o $T/tasks.shard");
    sh("sed 's/\"answer\":\"[0-9]\"/\"answer\":\"7\"/' $T/tasks.jsonl | data/make_shard --quiet -i - "
       "-o $T/sevens.shard");
    sh(SFT NEW "-o $T/sft.bin -x 60 -l 0.02 --metrics $T/sft.jsonl -j $T/chat.shard");
    return 0;
}

/* ---- the chain ------------------------------------------------------------------------------------------------- */

static void assert_keys(const char *name, int line, const char *keys) {
    char list[2000], *rest = NULL;
    snprintf(list, sizeof list, "%s", keys);
    for (char *key = strtok_r(list, " ", &rest); key; key = strtok_r(NULL, " ", &rest))
        if (!has_metric(name, line, key)) fail_msg("%s: no %s", name, key);
}

/* Checks that the event file of a directory contains these texts. */
static void assert_events(const char *directory, const char *tag) {
    char command[300];
    snprintf(command, sizeof command, "grep -aq -e '%s' $T/%s/events.out.tfevents.*", tag, directory);
    run(0, command);
}

/* Samples that are longer than longrope's original context are drawn with the list for long sequences, as by generate with the
 * same number of tokens, and change nothing in the training of short records. */
static void samples_of_longrope(void **state) {
    (void)state;
    Model m = models_longrope(96, 24);
    models_save(&m, "long.safetensors", false, "plain");
    memcpy(m.config.rope.long_list, m.config.rope.short_list, sizeof m.config.rope.long_list);
    models_save(&m, "short.safetensors", false, "plain");
    model_free(&m);
    put("rows.jsonl", "{\"prompt\":\"abcdefg\",\"completion\":\"hij\"}\n{\"prompt\":\"xyz\",\"completion\":\"uvw\"}\n");
    put("prompt.jsonl", "{\"prompt\":\"abcdefg\",\"answer\":\"\"}\n");
    sh("data/make_shard --quiet -i $T/rows.jsonl -o $T/rows.shard --model $T/long.safetensors");
    sh("data/make_shard --quiet -i $T/prompt.jsonl -o $T/prompt.shard --model $T/long.safetensors");
    for (int samples = 0; samples < 2; samples++) {
        sh("./train_sft -c $T/long.safetensors -i $T/rows.shard -o $T/x.safetensors -x 4 -l 0 --batch-tokens 8 "
           "--sample-steps %d --metrics $T/of%d.jsonl %s",
           samples, samples, samples ? "--sample-count 1 --sample-tokens 40" : "");
        if (samples) assert_holds(said, "sample abcdefg");
    }
    for (int step = 0; step < 4; step++)
        assert_true(metric("of0.jsonl", step, "loss") == metric("of1.jsonl", step, "loss"));
    char *text = text_of(files_path("of1.samples.jsonl"));
    json_t *sample = json_line_of(text, 0);
    const char *const models[] = {"long", "short"};
    for (int k = 0; k < 2; k++) {
        sh("./generate -c $T/%s.safetensors -i $T/prompt.shard -g 40 --temperature 0 -o $T/drawn.jsonl", models[k]);
        char *drawn_text = text_of(files_path("drawn.jsonl"));
        json_t *drawn = json_line_of(drawn_text, 0);
        const char *got = json_text_of(sample, "completion"), *want = json_text_of(drawn, "completion");
        assert_true(k ? strcmp(got, want) != 0 : !strcmp(got, want));
        json_decref(drawn), free(drawn_text);
    }
    json_decref(sample), free(text);
}

static void the_chain_through_files(void **state) {
    (void)state;
    sh("data/make_tasks --task add --digits 1 --count 60 --format chat --as jsonl -o - | "
       "data/make_shard --quiet -i - -o $T/add.shard");
    sh("data/make_tasks --task add --digits 1 --count 60 -o $T/addtasks.shard");
    sh("data/make_tasks --task add --digits 1 --count 5 --split heldout -o $T/heldout.shard");
    sh("./train_sft " NEW
       "--context 32 -i $T/add.shard -j $T/add.shard -o $T/add1.bin -x 20 -l 0.01 --micro-tokens 256 "
       "--batch-tokens 256 --eval-steps 10 --sample-steps 10 "
       "--metrics $T/add1.jsonl --tensorboard $T/tb1 --report $T/add1.html");
    assert_string_equal(out, "");
    assert_holds(said, "* learning-rate ");
    assert_holds(said, "1 layer, 2 heads, width 32, vocabulary 260, context 32");
    assert_holds(said, "peak memory");
    assert_keys(
        "add1.jsonl", 19,
        "step time loss grad_norm learning_rate num_tokens epoch entropy mean_token_accuracy step_time eval_loss "
        "eval_mean_token_accuracy eval_entropy");
    assert_int_equal(metric_lines("add1.jsonl"), 20);
    assert_events("tb1", "mean_token_accuracy");
    sh("grep -c 'sample' $T/add1.samples.jsonl || true; test $(wc -l < $T/add1.samples.jsonl) = 9");
    sh("grep -q '<svg' $T/add1.html && grep -q '</html>' $T/add1.html && ! grep -q 'https\\?://[^w]' $T/add1.html");

    sh("./train_grpo -c $T/add1.bin -i $T/addtasks.shard -j $T/heldout.shard -o $T/add2.bin -x 3 -l 1e-3 -g 4 -p 4 -G 4 "
       "--micro-tokens 512 --eval-steps 2 --eval-samples 4 --reward verify:1,format=hash:0.1 "
       "--metrics $T/add2.jsonl --tensorboard $T/tb2 --report $T/add2.html");
    assert_string_equal(out, "");
    assert_holds(said, "held-out greedy accuracy: ");
    assert_keys("add2.jsonl", 2,
                "step time loss grad_norm learning_rate num_tokens epoch reward reward_std frac_reward_zero_std "
                "rewards/verify/mean rewards/verify/std rewards/format/mean completions/mean_length "
                "completions/min_length completions/max_length completions/clipped_ratio "
                "completions/mean_terminated_length completions/min_terminated_length "
                "completions/max_terminated_length entropy clip_ratio/low_mean clip_ratio/low_min clip_ratio/high_mean "
                "clip_ratio/high_max clip_ratio/region_mean sampling/sampling_logp_difference/mean "
                "sampling/sampling_logp_difference/max step_time eval_accuracy eval_pass@1 eval_pass@4");
    assert_false(has_metric("add2.jsonl", 0, "kl"));
    assert_events("tb2", "frac_reward_zero_std");
    char *first = text_of(files_path("add2.samples.jsonl"));
    json_t *sample = json_line_of(first, 0);
    assert_string_equal(json_text_of(sample, "when"), "before");
    sh("grep -qF '%s' $T/add2.html", json_text_of(sample, "prompt"));
    assert_int_equal(lines_of(first), 6);
    json_decref(sample), free(first);

    sh("./generate -c $T/add2.bin -i $T/addtasks.shard -g 4 -o $T/said.jsonl");
    assert_int_equal(metric_lines("said.jsonl"), 60);
    sh("./evaluate -c $T/add2.bin -i $T/addtasks.shard -g 4 --num-samples 4");
    json_t *result = json_line_of(out, 0);
    assert_true(json_number_of(result, "pass@4") >= 0);
    json_decref(result);
}

/* The lineage lists the stages, and each parent's hash is that of the file's bytes. */
static void the_lineage_names_the_parents(void **state) {
    (void)state;
    Error e;
    Model m;
    ModelFile f;
    size_t n;
    sh(GRPO "-o $T/child.bin -x 1");
    uint8_t *bytes = files_get(files_path("sft.bin"), &n);
    char hash[20];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)XXH3_64bits(bytes, n));
    free(bytes);
    if (!model_load(&m, &f, files_path("child.bin"), NULL, false, backend_cpu(), models_device, false, 0, NULL, &e))
        fail_msg("%s", e.text);
    assert_int_equal(json_array_size(f.lineage), 2);
    const json_t *sft = json_array_get(f.lineage, 0), *grpo = json_array_get(f.lineage, 1);
    assert_string_equal(json_text_of(sft, "stage"), "train_sft");
    assert_true(json_is_null(json_object_get(sft, "parent")));
    assert_string_equal(json_text_of(grpo, "stage"), "train_grpo");
    assert_string_equal(json_text_of(grpo, "parent"), hash);
    assert_string_equal(json_text_of(json_object_get(grpo, "options"), "num-generations"), "16");
    assert_null(json_object_get(json_object_get(grpo, "options"), "output"));
    model_free(&m), model_file_free(&f);
}

static void the_chain_through_pipes_and_zstd(void **state) {
    (void)state;
    /* a pipe gives the same as files; standard output contains the model alone */
    sh(SFT NEW "-o $T/a.bin -x 5 -l 0.01");
    sh("./train_grpo -c $T/a.bin -i $T/tasks.shard -o $T/b.bin -x 2 -l 1e-3 -g 4 -p 6 -G 4 --sample-count 0");
    sh("data/make_shard --quiet -i - -o - < $T/chat.jsonl | ./train_sft --micro-tokens 256 "
       "--batch-tokens 240 -i - " NEW
       "-o - -x 5 -l 0.01 2>$T/err1 | tee $T/a.pipe | ./train_grpo -c - -i $T/tasks.shard -o - -x 2 -l 1e-3 -g 4 -p 6 "
       "-G 4 --sample-count 0 2>$T/err2 > $T/b.pipe");
    assert_true(weights_gap("a.bin", "a.pipe") == 0);
    assert_true(weights_gap("b.bin", "b.pipe") == 0);
    sh("cat $T/b.pipe | ./evaluate -c - -i $T/tasks.shard -g 4 --num-samples 2");
    assert_int_equal(lines_of(out), 1);
    json_t *row = json_line_of(out, 0);
    json_decref(row);
    /* compressed shards and models, on disk and in a pipe */
    sh("zstd -q $T/chat.shard -o $T/chat.shard.zst && zstd -q $T/tasks.shard -o $T/tasks.shard.zst");
    sh("./train_sft --micro-tokens 256 --batch-tokens 240 -i $T/chat.shard.zst " NEW "-o $T/a.bin.zst "
       "-x 5 -l 0.01");
    sh("zstd -dc $T/a.bin.zst > $T/a.unpacked");
    assert_true(weights_gap("a.bin", "a.unpacked") == 0);
    sh("cat $T/a.bin.zst | ./train_grpo -c - -i $T/tasks.shard.zst -o $T/c.bin -x 2 -l 1e-3 -g 4 -p 6 -G 4 "
       "--sample-count 0");
    assert_true(weights_gap("b.bin", "c.bin") == 0);
    sh("./generate -c $T/a.bin.zst -g 4 a=");
    /* metrics can use standard output if the model does not */
    sh(SFT NEW "-o $T/a.bin -x 3 --metrics - 2>/dev/null");
    assert_int_equal(lines_of(out), 5); /* three steps, between the records of the beginning and the end */
    refused(2, SFT NEW "-o - -x 3 --metrics -", "only one output can be standard output");
    refused(2, "./train_grpo -c - -i - -o $T/kept", "only one input can be standard input");
}

/* ---- train_sft ------------------------------------------------------------------------------------------------- */

static void sft_learns(void **state) {
    (void)state;
    /* ten equally likely digits, then the end: the minimum of the loss is ln(10) / 2 per token */
    const double least = log(10) / 2, loss = metric("sft.jsonl", -1, "loss");
    assert_true(metric("sft.jsonl", 0, "loss") > 5);
    if (!(loss > least - 0.02 && loss < least + 0.08)) fail_msg("loss %g, expected %g", loss, least);
    assert_near(metric("sft.jsonl", -1, "eval_loss"), loss, 0.05);
    assert_near(metric("sft.jsonl", -1, "mean_token_accuracy"), 0.55, 0.05);
    sh("./generate -c $T/sft.bin --temperature 0 -g 4 a=");
    assert_int_equal(strlen(out), 2);
    assert_true(out[0] >= '0' && out[0] <= '9');
}

static void sft_loss_on_all_tokens(void **state) {
    (void)state;
    /* in "a=7<eos>" the answer has two targets, and the whole text three: "=" is learned too */
    sh(SFT NEW "-o $T/x.bin -x 60 -l 0.02 --no-completion-only-loss --metrics $T/all.jsonl");
    assert_near(metric("all.jsonl", -1, "loss"), log(10) / 3, 0.08);
    assert_near(metric("all.jsonl", -1, "num_tokens"), metric("sft.jsonl", -1, "num_tokens"), 0);
}

static void sft_dynamic_fine_tuning(void **state) {
    (void)state;
    /* the loss is -p ln p, which is small if p is small; the validation loss is the ordinary one */
    sh(SFT NEW "-o $T/x.bin -x 3 -l 0.01 --loss-type dft -j $T/chat.shard --eval-steps 1 --metrics $T/dft.jsonl");
    assert_true(metric("dft.jsonl", 0, "loss") < 0.1);
    assert_true(metric("dft.jsonl", 0, "eval_loss") > 3);
    sh(SFT "-c $T/sft.bin -o $T/y.bin -x 1 -l 0 --loss-type dft -j $T/chat.shard --metrics $T/dft.jsonl");
    const double nll = metric("dft.jsonl", -1, "eval_loss"), dft = metric("dft.jsonl", -1, "loss");
    assert_near(nll, metric("sft.jsonl", -1, "eval_loss"), 1e-6);
    assert_near(dft, 0.1 * log(10) / 2, 0.03); /* p = 1/10 at the digit, 1 at the end */
}

static void sft_neftune(void **state) {
    (void)state;
    /* noise changes the training loss, reproducibly, and does not change the evaluation */
    sh(SFT "-c $T/sft.bin -o $T/x.bin -x 1 -l 0 --neftune-noise-alpha 5 -j $T/chat.shard --metrics $T/n5.jsonl");
    sh(SFT "-c $T/sft.bin -o $T/x.bin -x 1 -l 0 --neftune-noise-alpha 5 -j $T/chat.shard --metrics $T/n5b.jsonl");
    sh(SFT "-c $T/sft.bin -o $T/x.bin -x 1 -l 0 -j $T/chat.shard --metrics $T/n0.jsonl");
    assert_true(fabs(metric("n5.jsonl", 0, "loss") - metric("n0.jsonl", 0, "loss")) > 1e-3);
    assert_true(metric("n5.jsonl", 0, "loss") == metric("n5b.jsonl", 0, "loss"));
    assert_true(metric("n5.jsonl", 0, "eval_loss") == metric("n0.jsonl", 0, "eval_loss"));
    /* the noise belongs to the record and the position, not to the micro-batch: losses differ by rounding only */
    sh(SFT "-c $T/sft.bin -o $T/x.bin -x 3 -l 1e-3 --neftune-noise-alpha 5 --metrics $T/n5.jsonl");
    sh(SFT "-c $T/sft.bin -o $T/x.bin -x 3 -l 1e-3 --neftune-noise-alpha 5 --micro-tokens 16 --metrics $T/n5b.jsonl");
    for (int i = 0; i < 3; i++) assert_near(metric("n5.jsonl", i, "loss"), metric("n5b.jsonl", i, "loss"), 2e-6);
}

static void sft_does_not_depend_on_memory_options(void **state) {
    (void)state;
    const char *options[] = {"", "--micro-tokens 16", "--micro-tokens 1k", "--recompute 1",
                             "--recompute 2 --micro-tokens 40"};
    for (int i = 0; i < 5; i++) {
        sh(SFT NEW "-o $T/m%d.bin -x 4 -l 0.01 --metrics $T/m%d.jsonl %s", i, i, options[i]);
        char name[2][32];
        snprintf(name[0], 32, "m%d.bin", i);
        snprintf(name[1], 32, "m%d.jsonl", i);
        const double gap = weights_gap("m0.bin", name[0]);
        /* other orders of float32 sums; 2e-4 is a fiftieth of one step, for gradients that are almost 0 */
        if (gap > 2e-4) fail_msg("%s: weights differ by %g", options[i], gap);
        for (int line = 0; line < 4; line++)
            assert_near(metric(name[1], line, "loss"), metric("m0.jsonl", line, "loss"), 1e-4);
    }
}

static void sft_order_by_seed_and_epochs(void **state) {
    (void)state;
    /* half an epoch per step: the losses of a model that does not change show the order */
    const char *seeds[] = {"1", "1", "2"};
    double loss[3];
    for (int i = 0; i < 3; i++) {
        sh(SFT "-c $T/sft.bin -o $T/x.bin --batch-tokens 120 --num-train-epochs 1.5 -l 0 --seed %s "
               "--metrics $T/o.jsonl",
           seeds[i]);
        assert_int_equal(metric_lines("o.jsonl"), 3);
        loss[i] = metric("o.jsonl", 0, "loss");
        assert_near(metric("o.jsonl", 0, "epoch"), 0.5, 1e-9);
        assert_near(metric("o.jsonl", -1, "epoch"), 1.5, 1e-9);
        assert_near(metric("o.jsonl", -1, "num_tokens"), 360, 0);
        /* the two halves of an epoch average to its mean in any order */
        assert_near(metric_mean("o.jsonl", 0, 2, "loss"), metric("sft.jsonl", -1, "eval_loss"), 1e-4);
    }
    assert_true(loss[0] == loss[1] && loss[0] != loss[2]);
}

static void sft_schedules_and_clipping(void **state) {
    (void)state;
    sh(SFT NEW "-o $T/x.bin -x 10 -l 0.01 --lr-scheduler-type cosine --warmup-steps 2 --min-lr-rate 0.1 "
               "--metrics $T/s.jsonl");
    assert_near(metric("s.jsonl", 0, "learning_rate"), 0, 1e-12);
    assert_near(metric("s.jsonl", 1, "learning_rate"), 0.005, 1e-12);
    assert_near(metric("s.jsonl", 2, "learning_rate"), 0.01, 1e-12);
    assert_near(metric("s.jsonl", 6, "learning_rate"), 0.01 * (0.1 + 0.9 * 0.5), 1e-12);
    sh(SFT NEW "-o $T/x.bin -x 10 -l 0.01 --lr-scheduler-type wsd --decay-steps 0.2 --metrics $T/s.jsonl");
    assert_near(metric("s.jsonl", 7, "learning_rate"), 0.01, 1e-12);
    assert_true(metric("s.jsonl", 9, "learning_rate") < 0.005);
    assert_true(metric("s.jsonl", 0, "grad_norm") > 1); /* the value before clipping is logged */
}

static void sft_keeps_the_best(void **state) {
    (void)state;
    /* the learning rate rises until the loss rises: the best model is not the last */
    sh(SFT NEW "-o $T/last.bin --best $T/best.bin -x 30 -l 0.5 --lr-scheduler-type constant --warmup-steps 30 "
               "--eval-steps 1 -j $T/chat.shard --metrics $T/b.jsonl");
    double least = INFINITY;
    for (int i = 0; i < 30; i++) least = fmin(least, metric("b.jsonl", i, "eval_loss"));
    assert_true(least < metric("b.jsonl", -1, "eval_loss"));
    sh("./evaluate -c $T/best.bin -i $T/chat.shard");
    json_t *row = json_line_of(out, 0);
    assert_near(json_number_of(row, "loss"), least, 1e-4);
    json_decref(row);
}

static void sft_output_in_bf16(void **state) {
    (void)state;
    sh(SFT "-c $T/sft.bin -o $T/half.bin --output-dtype bf16 -x 1 -l 0");
    const double gap = weights_gap("half.bin", "sft.bin");
    assert_true(gap > 0 && gap < 0.02);
    sh("./evaluate -c $T/half.bin -i $T/chat.shard");
}

/* ---- train_grpo ------------------------------------------------------------------------------------------------ */

static void grpo_raises_the_reward(void **state) {
    (void)state;
    sh(GRPO_ON("sevens.shard") "-o $T/g.bin -x 50 -l 3e-3 --metrics $T/g.jsonl -j $T/sevens.shard --eval-steps 50");
    const double before = metric_mean("g.jsonl", 0, 3, "reward"), after = metric_mean("g.jsonl", 47, 50, "reward");
    if (!(before < 0.25 && after > 0.9)) fail_msg("reward %g before, %g after", before, after);
    assert_true(metric("g.jsonl", -1, "eval_accuracy") == 1);
    assert_holds(said, "100.0 % after");
    assert_true(metric("g.jsonl", 0, "ratio/mean") == 1);
    /* control: with a random reward nothing about the answers can be learned */
    sh(GRPO_ON("sevens.shard") "-o $T/r.bin -x 50 -l 1e-3 --reward random:1,verify:0 --metrics $T/r.jsonl "
                               "--activation-cache 0");
    for (int i = 0; i < 50; i++) /* the sampler equals the policy that is trained */
        assert_true(metric("r.jsonl", i, "sampling/sampling_logp_difference/max") < 1e-3);
    const double chance = metric_mean("r.jsonl", 30, 50, "rewards/verify/mean");
    assert_near(metric_mean("r.jsonl", 0, 50, "rewards/random/mean"), 0.5, 0.05);
    if (!(chance < 0.3)) fail_msg("accuracy %g by a random reward", chance);
}

/* At pi = pi_old the gradient of rho A is A grad log pi for every loss with a ratio; the losses differ in the weight of
 * a token. All completions here have two tokens (a digit, the end), so the means over answers and over tokens agree. */
static void grpo_losses_agree_on_policy(void **state) {
    (void)state;
    static const struct {
        const char *options;
        double factor; /* relative to grpo's gradient; 0: any positive number */
    } loss[] = {{"--loss-type grpo", 1},
                {"--loss-type bnpo", 1},
                {"--loss-type dapo", 1},
                {"--loss-type dr_grpo", 0.5}, /* constant 4 instead of 2 */
                {"--loss-type gspo", 1},
                {"--loss-type gmpo", 1},
                {"--loss-type cispo", 1},
                {"--loss-type luspo", 2}, /* not divided by the length */
                {"--loss-type rloo", 0},
                {"--loss-type sapo", 0},
                {"--loss-type vespo", 0},
                {"--loss-type dppo", 1},
                {"--loss-type dppo --num-iterations 2 -x 1", 1},
                {"--loss-type clip_cov --clip-cov-lb 1e5 --clip-cov-ub 1e6", 1}, /* no token is chosen */
                {"--loss-type kl_cov --num-iterations 2 -x 1 --kl-cov-ratio 1", 1},
                {"--loss-type grpo --importance-sampling-level sequence", 1},
                {"--loss-type grpo --epsilon 0.1 --epsilon-high 0.3 --delta 2", 1},
                {"--loss-type dapo --num-iterations 2 -x 1", 1},
                {"--loss-type grpo --multi-objective-aggregation normalize_then_sum", 0},
                {"--loss-type grpo --scale-rewards batch", 0},
                {"--loss-type grpo --scale-rewards none", 0},
                {"--advantage-estimator optimal_token_baseline", 0},
                {"--num-remains-in-group 5", 0},
                {"--num-remains-in-group 5 --group-filter token_efficiency --dynamic-sampling", 0},
                {"--positive-nll-coef 0.1", 0},
                {"--advantage-estimator optimal_token_baseline --num-iterations 2 -x 1", 0}};
    double first = 0;
    for (size_t i = 0; i < sizeof loss / sizeof *loss; i++) {
        /* only the first token, a digit, is uncertain: at temperature 1 the end follows it with near certainty */
        sh(GRPO "-o $T/x.bin -x 1 -l 0 --metrics $T/l.jsonl %s", loss[i].options);
        const double norm = metric("l.jsonl", 0, "grad_norm");
        if (!i) first = norm;
        assert_true(metric("l.jsonl", 0, "completions/min_length") == 2);
        assert_true(metric("l.jsonl", 0, "completions/max_length") == 2);
        assert_true(norm > 0);
        if (loss[i].factor && fabs(norm / first - loss[i].factor) > 2e-3)
            fail_msg("%s: gradient norm %g times grpo's, expected %g", loss[i].options, norm / first, loss[i].factor);
    }
}

/* Tokens chosen by covariance: all of them have lost their gradient; a KL penalty on all tokens holds the policy back. */
static void grpo_chooses_tokens_by_covariance(void **state) {
    (void)state;
    sh(GRPO "-o $T/x.bin -x 1 -l 0 --metrics $T/l.jsonl --loss-type clip_cov --clip-cov-ratio 1 --clip-cov-lb -1e6 "
            "--clip-cov-ub 1e6");
    assert_true(metric("l.jsonl", 0, "grad_norm") == 0 && metric("l.jsonl", 0, "covariance/chosen") == 1);
    sh(GRPO "-o $T/x.bin -x 1 -l 0 --metrics $T/l.jsonl --loss-type clip_cov --clip-cov-lb 0");
    assert_true(metric("l.jsonl", 0, "grad_norm") > 0);
    const double tokens = metric("l.jsonl", 0, "num_trained_tokens");
    assert_near(metric("l.jsonl", 0, "covariance/chosen"), 1 / tokens, 1e-9);
    double ratio[2];
    for (int i = 0; i < 2; i++) {
        sh(GRPO "-o $T/x.bin -x 8 -l 0.01 --num-iterations 8 --metrics $T/l.jsonl --loss-type kl_cov --kl-cov-ratio 1 "
                "--ppo-kl-coef %g",
           i ? 5.0 : 0.0);
        ratio[i] = metric("l.jsonl", -1, "policy/approxkl_avg");
    }
    if (!(ratio[1] < ratio[0] / 2)) fail_msg("mean (log rho)^2 / 2: %g without, %g with a penalty", ratio[0], ratio[1]);
}

static void grpo_kl_to_a_reference(void **state) {
    (void)state;
    const char *kinds[] = {"k1", "k2", "k3"};
    for (int i = 0; i < 3; i++) {
        sh(GRPO "-o $T/x.bin -x 4 -l 0.01 --beta 0.5 --kl-estimator %s --metrics $T/k.jsonl", kinds[i]);
        assert_near(metric("k.jsonl", 0, "kl"), 0, 1e-6);
        assert_true(fabs(metric("k.jsonl", -1, "kl")) > 1e-4);
    }
    /* a different reference: its KL is not 0 */
    sh(GRPO "-o $T/moved.bin -x 4 -l 0.02");
    sh(GRPO "-o $T/x.bin -x 1 -l 0.01 --beta 0.5 --reference $T/moved.bin --metrics $T/k.jsonl");
    assert_true(metric("k.jsonl", 0, "kl") > 1e-3);
    /* in the reward: it is 0 in the first step, and it holds the policy back */
    sh(GRPO "-o $T/x.bin -x 10 -l 0.02 --beta 0 --metrics $T/free.jsonl");
    sh(GRPO "-o $T/x.bin -x 10 -l 0.02 --beta 2 --kl-in reward --kl-estimator k1 --metrics $T/k.jsonl");
    assert_near(metric("k.jsonl", 0, "kl"), 0, 1e-6);
    assert_true(metric("k.jsonl", -1, "rewards/verify/mean") < metric("free.jsonl", -1, "rewards/verify/mean"));
    assert_false(has_metric("free.jsonl", -1, "kl"));
    refused(2, GRPO "-o $T/kept -x 1 --kl-in reward", "--kl-in: used only with --beta above 0");
    /* the reward is that of the completions; the objective is the reward minus beta times the KL per completion */
    for (int gdpo = 0; gdpo < 2; gdpo++) {
        const char *more = gdpo ? "--multi-objective-aggregation normalize_then_sum --reward verify,length=2/0.1" : "";
        double weights[2];
        for (int i = 0; i < 2; i++) {
            sh(GRPO "-o $T/k%d.bin -x 4 -l 0.02 --beta %s --kl-in reward --kl-estimator k1 --metrics $T/k.jsonl %s", i,
               i ? "50" : "0.001", more);
            const double reward =
                gdpo ? metric("k.jsonl", -1, "rewards/verify/mean") + metric("k.jsonl", -1, "rewards/length/mean")
                     : metric("k.jsonl", -1, "rewards/verify/mean");
            const double kl = metric("k.jsonl", -1, "kl") * metric("k.jsonl", -1, "completions/mean_length");
            assert_near(metric("k.jsonl", -1, "reward"), reward, 1e-6);
            assert_near(metric("k.jsonl", -1, "objective/kl"), kl, 1e-6 * fmax(1, fabs(kl)));
            assert_near(metric("k.jsonl", -1, "objective/rlhf_reward"), reward - (i ? 50 : 0.001) * kl, 1e-4);
            weights[i] = kl;
        }
        assert_true(weights[0] != weights[1] && weights_gap("k0.bin", "k1.bin") > 1e-4);
    }
}

/* beta follows its controller: Ziegler et al.'s rule on the KL per completion that is logged. */
static void grpo_adapts_beta(void **state) {
    (void)state;
    for (int in = 0; in < 2; in++) {
        sh(GRPO "-o $T/x.bin -x 6 -l 0.02 --beta 0.5 --kl-in %s --kl-controller adaptive --kl-target 0.01 "
                "--kl-horizon 400 --metrics $T/k.jsonl",
           in ? "reward" : "loss");
        assert_near(metric("k.jsonl", 0, "objective/kl_coef"), 0.5, 0);
        for (int i = 0; i < 5; i++) {
            const double error = fmax(-0.2, fmin(0.2, metric("k.jsonl", i, "objective/kl") / 0.01 - 1));
            const double next = metric("k.jsonl", i, "objective/kl_coef") * (1 + error * 6 * 16 / 400);
            assert_near(metric("k.jsonl", i + 1, "objective/kl_coef"), next, 1e-12);
        }
    }
    refused(2, GRPO "-o $T/kept -x 1 --kl-controller adaptive", "--beta above 0");
}

/* A reference that follows the policy, or is reset to it. */
static void grpo_moves_the_reference(void **state) {
    (void)state;
    sh(GRPO "-o $T/x.bin -x 5 -l 0.02 --beta 0.1 --sync-ref-model --ref-model-sync-steps 2 --ref-model-mixup-alpha 1 "
            "--metrics $T/k.jsonl");
    for (int i = 0; i < 5; i++) /* after a sync, at steps 2 and 4, the policy is its own reference */
        assert_true(i % 2 ? metric("k.jsonl", i, "kl") > 1e-4 : metric("k.jsonl", i, "kl") < 1e-7);
    /* a reset restarts the optimizer as well: the next step is the first step of a run from there, of the rate's size */
    sh(GRPO "-o $T/two.bin -x 2 -l 0.02 --beta 0.1 --ref-reset-steps 2");
    sh(GRPO "-o $T/three.bin -x 3 -l 0.02 --beta 0.1 --ref-reset-steps 2 --metrics $T/k.jsonl");
    assert_near(metric("k.jsonl", 2, "kl"), 0, 1e-7);
    assert_true(weights_gap("two.bin", "three.bin") > 0.019); /* |m| / sqrt(v) is 1 in AdamW's first step */
    refused(2, GRPO "-o $T/kept -x 1 --sync-ref-model", "--beta above 0");
    refused(2, GRPO "-o $T/kept -x 1 --beta 1 --ref-model-sync-steps 2", "used only with --sync-ref-model");
}

/* Reward models as parts of the reward, alone and with others, several at once. */
static void grpo_reward_models(void **state) {
    (void)state;
    FILE *prefs = fopen(files_path("prefs.jsonl"), "w");
    for (int p = 0; p < 6; p++)
        for (int k = 0; k < 9; k++)
            fprintf(prefs, "{\"prompt\":\"%c=\",\"chosen\":\"%d\",\"rejected\":\"%d\"}\n", 'a' + p, k + 1, k);
    assert_int_equal(fclose(prefs), 0);
    sh("data/make_shard --quiet -i $T/prefs.jsonl -o $T/prefs.shard");
    sh("./train_rm --layers 1 --width 32 --heads 2 --context 16 -i $T/prefs.shard -o $T/rm.bin -x 60 -l 3e-3 "
       "--micro-tokens 512");
    sh("./train_rm --layers 1 --width 32 --heads 2 --context 16 -i $T/prefs.shard -o $T/rm2.bin -x 5 -l 3e-3 "
       "--micro-tokens 512 --seed 7");
    sh(GRPO "-o $T/x.bin -x 1 -l 0 --reward-model $T/rm.bin --metrics $T/a.jsonl");
    sh("./train_ppo -c $T/sft.bin -i $T/tasks.shard -g 4 -p 6 -G 16 --micro-tokens 512 --sample-count 0 --algo rloo "
       "--temperature 1 -x 1 -l 0 --reward-model $T/rm.bin -o $T/x.bin --metrics $T/p.jsonl");
    const double one = metric("a.jsonl", 0, "rewards/model/mean");
    assert_near(metric("a.jsonl", 0, "reward"), one, 1e-6);
    assert_false(has_metric("a.jsonl", 0, "rewards/verify/mean"));
    assert_near(metric("p.jsonl", 0, "objective/scores"), one, 1e-5); /* the same samples, scored by train_ppo */
    sh(GRPO "-o $T/x.bin -x 1 -l 0 --reward verify:2,model:0.5,model=$T/rm2.bin:-3 --reward-model $T/rm.bin "
            "--metrics $T/b.jsonl");
    assert_near(metric("b.jsonl", 0, "rewards/model/mean"), one, 1e-6);
    const double two = metric("b.jsonl", 0, "rewards/model_2/mean");
    assert_true(fabs(two - one) > 1e-3);
    assert_near(metric("b.jsonl", 0, "reward"), 2 * metric("b.jsonl", 0, "rewards/verify/mean") + 0.5 * one - 3 * two,
                1e-5);
    sh(GRPO "-o $T/x.bin -x 20 -l 0.01 --reward-model $T/rm.bin --metrics $T/a.jsonl"); /* its score rises */
    assert_true(metric("a.jsonl", -1, "reward") > metric("a.jsonl", 0, "reward") + 0.3);
    refused(2, GRPO "-o $T/kept -x 1 --reward model", "give its file");
    refused(2, "./evaluate -c $T/sft.bin -i $T/tasks.shard --num-samples 2 --reward model=$T/rm.bin",
            "as --reward-model");
}

static void grpo_constants_of_losses(void **state) {
    (void)state;
    /* at ratio 1, sapo's slope does not depend on its temperature; with several passes it does */
    sh(GRPO "-o $T/a.bin -x 1 -l 0.01 --loss-type sapo");
    sh(GRPO "-o $T/b.bin -x 1 -l 0.01 --loss-type sapo --sapo-temperature-pos 3 --sapo-temperature-neg 2");
    assert_true(weights_gap("a.bin", "b.bin") < 1e-5);
    const char *const losses[][2] = {{"sapo", "--sapo-temperature-pos 3"}, {"sapo", "--sapo-temperature-neg 3"},
                                     {"vespo", "--vespo-k-pos 1"},         {"vespo", "--vespo-lambda-pos 1"},
                                     {"vespo", "--vespo-k-neg 1"},         {"vespo", "--vespo-lambda-neg 1"}};
    for (size_t i = 0; i < sizeof losses / sizeof *losses; i++) {
        const char *more = "-x 4 -l 0.02 --num-iterations 4";
        sh(GRPO "-o $T/a.bin %s --loss-type %s", more, losses[i][0]);
        sh(GRPO "-o $T/b.bin %s --loss-type %s %s", more, losses[i][0], losses[i][1]);
        assert_true(weights_gap("a.bin", "b.bin") > 1e-4);
        char text[256];
        snprintf(text, sizeof text, GRPO "-o $T/kept -x 1 %s", losses[i][1]);
        refused(2, text, "used only with --loss-type");
    }
    sh(GRPO "-o $T/x.bin -x 3 -l 0 --use-adaptive-entropy --entropy-target 9 --entropy-coef-delta 0.1 "
            "--entropy-coef-min 0.05 --entropy-coef-max 0.25 --metrics $T/e.jsonl");
    for (int i = 0; i < 3; i++) assert_near(metric("e.jsonl", i, "entropy_coef"), fmin(0.1 * (i + 1), 0.25), 1e-12);
    sh(GRPO
       "-o $T/x.bin -x 2 -l 0 --use-adaptive-entropy --entropy-target 0 --entropy-coef 0.1 --entropy-coef-delta 0.1 "
       "--entropy-coef-min 0.05 --metrics $T/e.jsonl");
    assert_near(metric("e.jsonl", -1, "entropy_coef"), 0.05, 1e-12);
}

static void grpo_several_steps_a_generation(void **state) {
    (void)state;
    sh(GRPO "-o $T/x.bin -x 6 -l 0.02 --num-iterations 3 --metrics $T/i.jsonl");
    /* lines 0 and 3 are the first of their generations, where pi = pi_old */
    for (int i = 0; i < 6; i++) {
        const double gap = metric("i.jsonl", i, "onpolicy/max_abs_ratio_minus_1");
        assert_true(i % 3 ? gap > 1e-3 : gap < 1e-4);
        assert_int_equal(has_metric("i.jsonl", i, "reward"), i % 3 == 0);
    }
    sh(GRPO "-o $T/x.bin -x 3 -l 0.02 --steps-per-generation 3 --metrics $T/i.jsonl");
    assert_true(metric("i.jsonl", 0, "onpolicy/max_abs_ratio_minus_1") < 1e-4);
    assert_true(metric("i.jsonl", 2, "onpolicy/max_abs_ratio_minus_1") > 1e-4);
    refused(2, GRPO "-o $T/kept -x 1 --steps-per-generation 4", "4 does not divide the 6 prompts");
}

#define LONG                                                                                                           \
    "./train_grpo --layers 2 --width 64 --heads 4 --context 64 -i $T/tasks.shard -g 40 -p 6 -G 8 --micro-tokens 512 "  \
    "--sample-count 0 -x 6 -l 1e-3 --adam-epsilon 1e-3 "

static void grpo_activation_cache(void **state) {
    (void)state;
    /* steps over the sampler's activations are steps over those of a forward pass, up to rounding (as in test_ppo.c) */
    const char *how[] = {"--reward random", "--reward random --num-iterations 2 --steps-per-generation 3",
                         "--reward 'regex=/[0-9][0-9]/' --dynamic-sampling --max-resamples 50 --entropy-coef 0.1",
                         "--reward random --micro-tokens 60 --recompute 2"};
    for (int i = 0; i < 4; i++) {
        sh(LONG "-o $T/a.bin %s --metrics $T/a.jsonl", how[i]);
        sh(LONG "-o $T/b.bin %s --metrics $T/b.jsonl --activation-cache 0", how[i]);
        assert_true(metric("a.jsonl", 0, "completions/mean_length") > 20);
        assert_true(weights_gap("a.bin", "b.bin") < 2e-4);
        assert_near(metric("a.jsonl", 0, "loss"), metric("b.jsonl", 0, "loss"), 1e-5);
        assert_near(metric("a.jsonl", 0, "entropy"), metric("b.jsonl", 0, "entropy"), 1e-5);
        assert_near(metric("a.jsonl", 0, "grad_norm") / metric("b.jsonl", 0, "grad_norm"), 1, 1e-4);
        /* the trainer has the sampler's log-probabilities, not ones that are computed again */
        assert_true(metric("a.jsonl", 0, "sampling/sampling_logp_difference/max") == 0);
        assert_true(metric("b.jsonl", 0, "sampling/sampling_logp_difference/max") > 0);
        if (i == 2) assert_true(metric("a.jsonl", 0, "dynamic_sampling/resampled_groups") >= 2);
        if (i != 1) continue;
        assert_true(metric("a.jsonl", 0, "onpolicy/max_abs_ratio_minus_1") == 0);
        assert_true(metric("a.jsonl", 1, "onpolicy/max_abs_ratio_minus_1") > 1e-2); /* other weights */
    }
    refused(2, GRPO "-o $T/kept -x 1 --activation-cache 1 -p 4096", "the activations of a generation take up to");
    refused(2, GRPO "-o $T/kept -x 1 --activation-cache 1 --beta 0.1 --kl-estimator exact",
            "--activation-cache: used only without a teacher");
}

static void grpo_dynamic_sampling(void **state) {
    (void)state;
    /* four samples with a chance of a tenth each: most groups have no right answer and are replaced */
    sh(GRPO "-o $T/x.bin -x 4 -l 0 -G 4 --metrics $T/d0.jsonl");
    sh(GRPO "-o $T/x.bin -x 4 -l 0 -G 4 --dynamic-sampling --max-resamples 50 --metrics $T/d1.jsonl");
    assert_true(metric_mean("d0.jsonl", 0, 4, "frac_reward_zero_std") > 0.3);
    for (int i = 0; i < 4; i++) assert_true(metric("d1.jsonl", i, "frac_reward_zero_std") == 0);
    assert_true(metric_mean("d1.jsonl", 0, 4, "dynamic_sampling/resampled_groups") >= 2);
    assert_true(metric("d1.jsonl", -1, "epoch") > metric("d0.jsonl", -1, "epoch"));
    /* the groups that are kept have more right answers than those that are drawn: about a tenth */
    assert_near(metric_mean("d1.jsonl", 0, 4, "dynamic_sampling/reward"), 0.1, 0.06);
    for (int i = 0; i < 4; i++) {
        assert_true(metric("d1.jsonl", i, "reward") >= 0.25); /* at least one of the four */
        assert_true(metric("d1.jsonl", i, "dynamic_sampling/reward") < metric("d1.jsonl", i, "reward"));
    }
    assert_false(has_metric("d0.jsonl", 0, "dynamic_sampling/reward"));
    /* the number of rounds is limited: a reward that never differs ends the run with a warning */
    sh(GRPO "-o $T/x.bin -x 1 -l 0 -G 2 --dynamic-sampling --max-resamples 2 --reward regex=/x/ --metrics $T/d2.jsonl");
    assert_true(metric("d2.jsonl", 0, "dynamic_sampling/resampled_groups") == 12);
    assert_true(metric("d2.jsonl", 0, "frac_reward_zero_std") == 1);
    assert_holds(said, "the rewards of every group are all equal");
}

static void grpo_masks(void **state) {
    (void)state;
    /* a limit of one token truncates every answer: with the mask no token is left to train on */
    sh(GRPO "-o $T/x.bin -x 1 -l 0 -g 1 --metrics $T/t.jsonl");
    assert_true(metric("t.jsonl", 0, "completions/clipped_ratio") == 1 && metric("t.jsonl", 0, "grad_norm") > 0);
    assert_holds(said, "no completion ended within 1 tokens");
    sh(GRPO "-o $T/x.bin -x 1 -l 0 -g 1 --mask-truncated-completions --metrics $T/t.jsonl");
    assert_true(metric("t.jsonl", 0, "grad_norm") == 0);
    /* the digits are uncertain, the end is not: half of the tokens carry nearly all of the gradient */
    sh(GRPO "-o $T/x.bin -x 1 -l 0 --metrics $T/q0.jsonl");
    sh(GRPO "-o $T/x.bin -x 1 -l 0 --top-entropy-quantile 0.5 --metrics $T/q1.jsonl");
    assert_near(metric("q1.jsonl", 0, "grad_norm") / metric("q0.jsonl", 0, "grad_norm"), 1, 0.05);
    sh(GRPO "-o $T/x.bin -x 4 -l 0.05 --num-iterations 4 --off-policy-mask-threshold 0.01 --metrics $T/p1.jsonl");
    sh(GRPO "-o $T/x.bin -x 4 -l 0.05 --num-iterations 4 --metrics $T/p0.jsonl");
    assert_true(metric("p1.jsonl", 0, "grad_norm") == metric("p0.jsonl", 0, "grad_norm"));
    assert_true(metric("p1.jsonl", -1, "grad_norm") != metric("p0.jsonl", -1, "grad_norm"));
}

static void grpo_entropy(void **state) {
    (void)state;
    /* a bonus keeps the entropy higher, a negative one lowers it */
    const char *coef[] = {"-0.3", "0", "0.3"};
    double entropy[3];
    for (int i = 0; i < 3; i++) {
        sh(GRPO "-o $T/x.bin -x 10 -l 0.01 --entropy-coef %s --metrics $T/e.jsonl", coef[i]);
        entropy[i] = metric("e.jsonl", -1, "entropy");
    }
    if (!(entropy[0] < entropy[1] && entropy[1] < entropy[2]))
        fail_msg("entropies %g, %g, %g", entropy[0], entropy[1], entropy[2]);
    /* the coefficient rises by 0.005 per step while the entropy is below its target */
    sh(GRPO "-o $T/x.bin -x 4 -l 0 --use-adaptive-entropy --entropy-target 9 --metrics $T/e.jsonl");
    for (int i = 0; i < 4; i++) assert_near(metric("e.jsonl", i, "entropy_coef"), 0.005 * (i + 1), 1e-12);
}

static void grpo_sampling_options(void **state) {
    (void)state;
    sh(GRPO "-o $T/x.bin -x 2 -l 0 --top-k 3 --metrics $T/s.jsonl");
    sh(GRPO "-o $T/x.bin -x 2 -l 0 --top-p 0.5 --min-p 0.01 --repetition-penalty 1.2 --metrics $T/s.jsonl");
    /* log-probabilities are at the sampling temperature, in sampling and in training */
    sh(GRPO "-o $T/x.bin -x 2 -l 0 --temperature 0.5 --activation-cache 0 --metrics $T/s.jsonl");
    assert_true(metric("s.jsonl", 0, "sampling/sampling_logp_difference/max") < 1e-3);
    /* neither the slots nor the micro-batch size change the samples and the training */
    sh(GRPO "-o $T/s0.bin -x 3 -l 1e-3 -G 8 --metrics $T/s0.jsonl");
    sh(GRPO "-o $T/s1.bin -x 3 -l 1e-3 -G 8 --slots 5 --micro-tokens 16 --recompute 2 --metrics $T/s1.jsonl");
    assert_true(weights_gap("s0.bin", "s1.bin") < 2e-4);
    for (int i = 0; i < 3; i++) assert_near(metric("s0.jsonl", i, "reward"), metric("s1.jsonl", i, "reward"), 1e-6);
}

/* ---- a reward by a program ------------------------------------------------------------------------------------- */

static void grpo_reward_program(void **state) {
    (void)state;
    /* it is started once and stays: one line in its log for any number of steps; 1 if the completion begins with 7 */
    put("seven.sh", "echo $$ >> $T/pids\n"
                    "while read -r line; do case $line in *'\"completion\":\"7'*) echo 1;; *) echo 0;; esac; done\n");
    sh(GRPO "-o $T/x.bin -x 25 -l 0.01 --reward-cmd 'sh $T/seven.sh' --metrics $T/c.jsonl");
    assert_true(metric_mean("c.jsonl", 22, 25, "rewards/command/mean") > 0.8);
    assert_int_equal(metric_lines("pids"), 1);
    /* the program alone is the reward, unless --reward adds more */
    assert_false(has_metric("c.jsonl", 0, "rewards/verify/mean"));
    /* it may leave an answer out of the sum, and it combines with other parts */
    put("null.sh",
        "while read -r line; do n=$((n + 1)); if [ $((n % 4)) = 0 ]; then echo null; else echo $((n % 3)); fi; done\n");
    sh(GRPO "-o $T/x.bin -x 2 -l 1e-3 --reward command:0.5,verify --reward-cmd 'sh $T/null.sh' --metrics $T/c.jsonl");
    assert_true(has_metric("c.jsonl", 0, "rewards/verify/mean"));
    assert_near(metric("c.jsonl", 0, "rewards/command/mean"), 1, 0.05);
}

/* ---- not a number ---------------------------------------------------------------------------------------------- */

/* Finite weights whose logits are infinite: every step is skipped and counted, and too many of them end the run. */
static void a_nan_is_guarded_against(void **state) {
    (void)state;
    Error e;
    Model m;
    ModelFile f;
    if (!model_load(&m, &f, files_path("sft.bin"), NULL, false, backend_cpu(), models_device, false, 0, NULL, &e))
        fail_msg("%s", e.text);
    const float most = 3.4e38f, ten = 10;
    m.backend->weights_upload(m.device, weights_at(m.backend, m.weights, m.tensor[TENSOR_lnfb].offset), &most, 1);
    for (int32_t v = 0; v < m.config.vocab; v++)
        m.backend->weights_upload(
            m.device,
            weights_at(m.backend, m.weights, m.tensor[TENSOR_wte].offset + (size_t)v * (size_t)m.config.width), &ten,
            1);
    if (!model_save(&m, &f, files_path("nan.bin"), false, NULL, NULL, &e)) fail_msg("%s", e.text);
    model_free(&m), model_file_free(&f);
    put("kept", "earlier");
    const char *program[] = {"./train_sft -i $T/chat.shard --micro-tokens 256 --batch-tokens 240",
                             "./train_grpo -i $T/tasks.shard -g 4 -p 6 -G 4 --reward random --sample-count 0"};
    for (int i = 0; i < 2; i++) {
        char command[300];
        snprintf(command, sizeof command,
                 "%s -c $T/nan.bin -o $T/kept -x 9 -l 1e-3 --max-bad-steps 3 --metrics $T/nan%d.jsonl", program[i], i);
        run(1, command);
        assert_string_equal(out, "");
        files_assert_content(files_path("kept"), "earlier", 7);
        assert_holds(said, i ? "step 3: the gradient is not finite; the step was skipped (3 so far)" /* a ratio of 1 */
                             : "step 3: the loss is not finite; the step was skipped (3 so far)");
        assert_holds(said, "4 steps were skipped for NaN or infinity, --max-bad-steps allows 3\n");
        const char *name = i ? "nan1.jsonl" : "nan0.jsonl";
        assert_int_equal(metric_lines(name), 3);
        sh("tail -n 1 $T/%s | grep -q '\"status\":\"failed\".*--max-bad-steps allows 3'", name); /* the record ends */
        assert_true(isnan(metric(name, 2, "grad_norm")) && metric(name, 2, "grad/nan_count") == 3);
        /* within the limit the run ends normally, and the weights are unchanged */
        snprintf(command, sizeof command, "%s -c $T/nan.bin -o $T/nan2.bin -x 2 -l 1e-3 --max-bad-steps 2", program[i]);
        run(0, command);
        size_t n, k;
        float *x = weights_of("nan.bin", &n), *y = weights_of("nan2.bin", &k);
        assert_true(n == k && !memcmp(x, y, n * sizeof *x));
        free(x), free(y);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_chain_through_files),
                                       cmocka_unit_test(samples_of_longrope),
                                       cmocka_unit_test(the_lineage_names_the_parents),
                                       cmocka_unit_test(the_chain_through_pipes_and_zstd),
                                       cmocka_unit_test(sft_learns),
                                       cmocka_unit_test(sft_loss_on_all_tokens),
                                       cmocka_unit_test(sft_dynamic_fine_tuning),
                                       cmocka_unit_test(sft_neftune),
                                       cmocka_unit_test(sft_does_not_depend_on_memory_options),
                                       cmocka_unit_test(sft_order_by_seed_and_epochs),
                                       cmocka_unit_test(sft_schedules_and_clipping),
                                       cmocka_unit_test(sft_keeps_the_best),
                                       cmocka_unit_test(sft_output_in_bf16),
                                       cmocka_unit_test(grpo_raises_the_reward),
                                       cmocka_unit_test(grpo_losses_agree_on_policy),
                                       cmocka_unit_test(grpo_chooses_tokens_by_covariance),
                                       cmocka_unit_test(grpo_kl_to_a_reference),
                                       cmocka_unit_test(grpo_adapts_beta),
                                       cmocka_unit_test(grpo_moves_the_reference),
                                       cmocka_unit_test(grpo_reward_models),
                                       cmocka_unit_test(grpo_constants_of_losses),
                                       cmocka_unit_test(grpo_several_steps_a_generation),
                                       cmocka_unit_test(grpo_activation_cache),
                                       cmocka_unit_test(grpo_dynamic_sampling),
                                       cmocka_unit_test(grpo_masks),
                                       cmocka_unit_test(grpo_entropy),
                                       cmocka_unit_test(grpo_sampling_options),
                                       cmocka_unit_test(grpo_reward_program),
                                       cmocka_unit_test(a_nan_is_guarded_against)};
    return cmocka_run_group_tests_name("train", tests, setup, models_teardown);
}
