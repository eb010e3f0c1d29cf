/* test_lora_runs.c - the trainers with adapters: all five continue bit for bit from a state; the reference is the base
 * model, without a copy; only the adapters have gradients and moments. Needs the trainers, generate and data/. */
#include "letters.h" /* letters_setup */
#include "models.h"  /* refused, assert_near, models_teardown */
#include "run.h"     /* sh, metric, weights_gap, assert_resumes */
#include "shell.h"   /* assert_holds, said */

static int setup(void **state) {
    if (letters_setup(state)) return 1;
    sh("./train_sft --layers 2 --width 32 --heads 2 --context 48 -i $T/chat.shard -o $T/base.bin -x 20 -l 3e-3 "
       "--batch-tokens 400");
    sh("./train_rm -c $T/base.bin -i $T/prefs.shard -x 10 -o $T/rm.bin");
    return 0;
}

#define LORA " --lora-rank 4 -l 1e-2 "

static void resumes(const char *command, int steps) { assert_resumes(command, steps, "bin"); }

static void all_trainers_resume(void **state) {
    (void)state;
    resumes("./train_sft -c $T/base.bin -i $T/chat.shard --batch-tokens 200 --neftune-noise-alpha 2" LORA, 10);
    resumes("./train_rm -c $T/base.bin -i $T/prefs.shard" LORA, 6);
    resumes("./train_dpo -c $T/base.bin -i $T/prefs.shard --lora-targets c_attn,c_fc" LORA, 6);
    resumes("./train_dpo -c $T/base.bin -i $T/prefs.shard --precompute-ref-log-probs --use-rslora" LORA, 6);
    resumes("./train_grpo -c $T/base.bin -i $T/tasks.shard --beta 0.1 -g 4 -p 4 -G 4" LORA, 6);
    resumes("./train_ppo -c $T/base.bin -i $T/prompts.shard --reward-model $T/rm.bin -g 6" LORA, 12);
    resumes("./train_ppo -c $T/base.bin -i $T/prompts.shard --reward-model $T/rm.bin --critic $T/rm.bin -g 6" LORA, 12);
}

/* The same with quantised weights, also for adapters that are continued, whose reference shares them with the policy. */
static void quantised_runs_resume(void **state) {
    (void)state;
    resumes("./train_sft -c $T/base.bin -i $T/chat.shard --batch-tokens 200 --quantize q4_0" LORA, 4);
    resumes("./train_rm -c $T/base.bin -i $T/prefs.shard --quantize q8_0" LORA, 4);
    resumes("./train_dpo -c $T/base.bin -i $T/prefs.shard --quantize q4_0 --adapter-output $T/adapter" LORA, 4);
    resumes("./train_dpo -c $T/base.bin -i $T/prefs.shard --quantize q4_0 --adapter $T/adapter -l 1e-2", 4);
    resumes("./train_grpo -c $T/base.bin -i $T/tasks.shard --beta 0.1 -g 4 -p 4 -G 4 --quantize q8_0" LORA, 4);
    resumes("./train_ppo -c $T/base.bin -i $T/prompts.shard --reward-model $T/rm.bin --critic $T/rm.bin -g 6 "
            "--quantize q4_0" LORA,
            12);
    refused(1,
            "./train_dpo -c $T/base.bin -i $T/prefs.shard -x 4 --adapter $T/adapter -o $T/x.bin --resume $T/run.state",
            "(or with another --dtype or --quantize)");
}

/* New adapters change nothing: after a step at rate 0 the output has the values of the blocks, with which evaluate finds
 * the same loss, up to the order of sums. The blocks of 24,576 weights and of embeddings of 384 rows take 34 bytes for 32
 * of them; 48 positions, norms and biases take 4 * (48 * 32 + 2 * 32 + 2 * (4 * 32 + 96 + 32 + 128 + 32)), and adapters
 * and their gradients 4 * 4096 bytes each. */
static void quantised_values(void **state) {
    (void)state;
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 1 --lora-rank 4 -l 0 --quantize q8_0 -o $T/values.bin "
       "--adapter-output $T/adapter");
    assert_holds(said, "values.bin: it will hold the float values of the quantised weights");
    const double blocks = (24576 + 384 * 32) / 32 * 34,
                 rest = 4 * (48 * 32 + 2 * 32 + 2 * (4 * 32 + 96 + 32 + 128 + 32));
    char text[64];
    snprintf(text, sizeof text, "weights and gradients %.1f kB", (blocks + rest + 2 * 4 * 4096) / 1e3);
    assert_holds(said, text);
    sh("./evaluate -c $T/values.bin -i $T/chat.shard >$T/values.json");
    sh("./evaluate -c $T/base.bin -i $T/chat.shard --quantize q8_0 >$T/blocks.json");
    sh("./evaluate -c $T/base.bin -i $T/chat.shard --quantize q8_0 --adapter $T/adapter >$T/added.json");
    sh("./evaluate -c $T/base.bin -i $T/chat.shard >$T/base.json");
    const double loss = metric("values.json", 0, "loss");
    assert_near(metric("blocks.json", 0, "loss"), loss, 1e-5 * loss);
    assert_near(metric("added.json", 0, "loss"), loss, 1e-5 * loss);
    assert_true(metric("base.json", 0, "loss") != loss);
    sh("./generate -c $T/base.bin --quantize q4_0 --temperature 0 -g 4 'a'");
}

/* The policy without its adapters is the model of -c: naming that model as the reference changes nothing, and at the
 * first step policy and reference are equal. The metrics are those of the same losses, so only the models are
 * compared, whose files also hold the options. */
static void the_reference_is_the_base(void **state) {
    (void)state;
    static const char *const commands[] = {
        "./train_dpo -c $T/base.bin -i $T/prefs.shard -x 6 --logging-steps 1" LORA,
        "./train_dpo -c $T/base.bin -i $T/prefs.shard -x 6 --logging-steps 1 --precompute-ref-log-probs" LORA,
        "./train_grpo -c $T/base.bin -i $T/tasks.shard -x 4 --beta 0.1 -g 4 -p 4 -G 4 --reward random" LORA,
        "./train_ppo -c $T/base.bin -i $T/prompts.shard --reward-model $T/rm.bin -x 4 -g 6" LORA};
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        sh("%s -o $T/a.bin --metrics $T/a.jsonl", commands[i]);
        sh("%s -o $T/b.bin --reference $T/base.bin", commands[i]);
        assert_true(weights_gap("a.bin", "b.bin") == 0);
        assert_true(weights_gap("a.bin", "base.bin") > 0);
    }
}

/* The gradients and moments of 8 matrices with adapters of rank 4 over layers of width 32, in floats: a layer has
 * 4 (32 + 96) + 4 (32 + 32) + 4 (32 + 128) + 4 (128 + 32) = 2048. The weights are 2 * 12.6 k and the embeddings. */
static void memory_is_that_of_the_adapters(void **state) {
    (void)state;
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 1 -o $T/a.bin" LORA);
    assert_holds(said, "optimizer 32.8 kB"); /* 2 layers, 2 moments, 4 bytes */
}

/* Gradients and moments have no pages yet when the memory is predicted: 3 * 4 bytes of each of 6.4 million parameters, 77 MB,
 * which are most of what this run takes. */
static void memory_is_predicted(void **state) {
    (void)state;
    double peak, predicted;
    char a[3], b[3];
    sh("./train_sft --layers 2 --width 512 --heads 8 --context 48 -i $T/chat.shard -x 2 -o $T/a.bin");
    const char *line = strstr(said, "peak memory ");
    assert_non_null(line);
    assert_int_equal(sscanf(line, "peak memory %lf %2[A-Z], predicted %lf %2[A-Z]", &peak, a, &predicted, b), 4);
    assert_string_equal(a, "MB");
    assert_string_equal(b, "MB");
    if (!(peak < 1.1 * predicted && predicted < 1.5 * peak)) fail_msg("peak %g MB, predicted %g MB", peak, predicted);
}

static void options_that_do_not_fit(void **state) {
    (void)state;
    refused(2, "./train_sft -c $T/base.bin -i $T/chat.shard -o $T/x.bin --lora-alpha 8",
            "--lora-alpha: used only with --lora-rank");
    refused(2, "./train_sft -c $T/base.bin -i $T/chat.shard -o $T/x.bin --quantize q8_0",
            "--quantize: requires --lora-rank or --adapter");
    refused(1, "./generate -c $T/base.bin --quantize keep a",
            "--quantize keep: the model is neither a folder nor a GGUF file");
    refused(2, "./train_sft -c $T/base.bin -i $T/chat.shard -o $T/x.bin --use-rslora",
            "--use-rslora: used only with --lora-rank");
    refused(2, "./train_sft -c $T/base.bin -i $T/chat.shard -o $T/x.bin --lora-rank 2 --lora-targets queries",
            "--lora-targets: unknown projection 'queries'");
    refused(1, "./train_sft -c $T/base.bin -i $T/chat.shard -o $T/x.bin --lora-rank 2 --lora-targets q_proj,c_fc",
            "this model has one adapter for q_proj, k_proj and v_proj together: name c_attn or qkv_proj");
    refused(2, "./train_dpo -c $T/base.bin -i $T/prefs.shard -o $T/x.bin --lora-rank 2 --sync-ref-model",
            "--sync-ref-model: cannot be combined with --lora-rank");
    refused(2, "./train_rm -c $T/base.bin -i $T/prefs.shard --lora-rank 2 --adapter-output $T/adapter",
            "--adapter-output: the folder has no place for the model's value head");
    /* what vLLM does not load as it is */
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 1 --lora-rank 17 --adapter-output $T/wide");
    assert_holds(said, "--adapter-output: vLLM loads adapters of rank 17 only with --max-lora-rank 17 or more");
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 1 --adapter $T/wide --adapter-output $T/wide2");
    assert_holds(said, "adapters of rank 17 only");
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 1 --lora-rank 2 --use-dora --adapter-output $T/dora");
    assert_holds(said, "--adapter-output: vLLM does not load adapters of DoRA; give it the merged model of -o");
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 1 --lora-rank 16 --adapter-output $T/narrow");
    assert_null(strstr(said, "vLLM"));
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 2 --lora-rank 2 -o $T/a.bin --save-steps 1");
    refused(1, "./train_sft -c $T/base.bin -i $T/chat.shard -x 2 --lora-rank 3 -o $T/x.bin --resume $T/a.bin.state",
            "its adapters have rank 2");
}

/* The learning rate's default is ten times that of full training; a rate that is given is used as it is. */
static void default_rate(void **state) {
    (void)state;
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 1 -o $T/a.bin --lr-scheduler-type constant --metrics $T/a.jsonl");
    const double full = metric("a.jsonl", 0, "learning_rate");
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 1 -o $T/a.bin --lr-scheduler-type constant --metrics $T/a.jsonl "
       "--lora-rank 1");
    assert_near(metric("a.jsonl", 0, "learning_rate"), 10 * full, 1e-12);
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 1 -o $T/a.bin --lr-scheduler-type constant --metrics $T/a.jsonl "
       "--lora-rank 1 -l 2e-5");
    assert_near(metric("a.jsonl", 0, "learning_rate"), 2e-5, 1e-15);
}

/* Two ranks with each distribution of the optimizer's state end where one rank does, up to the order of sums: a step
 * moves a weight by about the learning rate, 1e-2, and AdamW's first steps are its sign; 6 steps from gradients that
 * agree to 1e-5 agree to 1e-4. */
static void ranks_agree(void **state) {
    (void)state;
    if (access("llmc_mpi.so", R_OK) || system("command -v mpirun >/dev/null")) skip();
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    sh("./train_sft -c $T/base.bin -i $T/chat.shard -x 6 --batch-tokens 400 --micro-tokens 64 -o $T/a.bin" LORA);
    for (int zero = 0; zero < 3; zero++) {
        sh("OMP_NUM_THREADS=1 mpirun --oversubscribe --bind-to none -n 2 ./train_sft -c $T/base.bin -i $T/chat.shard -x 6 "
           "--batch-tokens 400 --micro-tokens 64 --zero %d -o $T/b.bin" LORA,
           zero);
        const double gap = weights_gap("a.bin", "b.bin");
        if (!(gap < 1e-4)) fail_msg("--zero %d: weights differ by %g", zero, gap);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_trainers_resume),
                                       cmocka_unit_test(quantised_runs_resume),
                                       cmocka_unit_test(quantised_values),
                                       cmocka_unit_test(the_reference_is_the_base),
                                       cmocka_unit_test(memory_is_that_of_the_adapters),
                                       cmocka_unit_test(memory_is_predicted),
                                       cmocka_unit_test(options_that_do_not_fit),
                                       cmocka_unit_test(default_rate),
                                       cmocka_unit_test(ranks_agree)};
    return cmocka_run_group_tests_name("lora_runs", tests, setup, models_teardown);
}
