/* test_state_runs.c - the trainers with a tiny Llama, whose states no file of llm.c can hold: every trainer continues bit
 * for bit from a state, with all weights, with a critic, a moving reference, and with adapters, whose states need the base
 * again. Needs the trainers, generate, evaluate and data/. */
#include "files.h"   /* files_path */
#include "letters.h" /* letters_setup */
#include "models.h"  /* refused, models_family, models_teardown */
#include "run.h"     /* sh, weights_gap, assert_resumes, assert_same_file */
#include "shell.h"   /* assert_holds, out, said, run */
#include <sys/stat.h>

static int setup(void **state) {
    if (letters_setup(state)) return 1;
    models_family("llama-a", "base/", 7);
    models_family("llama-a", "other/", 8);
    sh("./train_rm -c $T/base -i $T/prefs.shard -x 6 -o $T/rm/");
    return 0;
}

static void resumes(const char *command, int steps) { assert_resumes(command, steps, "safetensors"); }

#define SFT   "./train_sft -c $T/base -i $T/chat.shard --batch-tokens 200 -l 1e-2 "
#define DPO   "./train_dpo -c $T/base -i $T/prefs.shard -l 1e-2 "
#define GRPO  "./train_grpo -c $T/base -i $T/tasks.shard --beta 0.1 -g 4 -p 4 -G 4 -l 1e-2 "
#define PRIME "./train_ppo -c $T/base -i $T/tasks.shard --algo prime -g 4 -p 4 -G 4 -l 1e-2 --prm-learning-rate 1e-2 "
#define PPO   "./train_ppo -c $T/base -i $T/prompts.shard --reward-model $T/rm -g 6 -l 1e-2 "

static void all_weights(void **state) {
    (void)state;
    resumes(SFT "--weight-decay 0.1 --neftune-noise-alpha 2", 8);
    sh("./generate -c $T/run.state -g 3 ab && ./evaluate -c $T/run.state -i $T/chat.shard"); /* a state is a model */
    resumes("./train_rm -c $T/base -i $T/prefs.shard -l 1e-2", 6);
    resumes(DPO, 6);
    /* Its reference is in a file next to the state. */
    resumes(DPO "--sync-ref-model --ref-model-sync-steps 2 --ref-model-mixup-alpha 0.5", 6);
    resumes(GRPO, 6);
    resumes(PPO, 12);
    resumes(PPO "--critic $T/rm", 12);
    resumes(PRIME, 6);
}

static void adapters(void **state) {
    (void)state;
    resumes(SFT "--lora-rank 3", 8);
    resumes("./train_rm -c $T/base -i $T/prefs.shard -l 1e-2 --lora-rank 3", 6);
    resumes(DPO "--lora-rank 3 --use-rslora --lora-targets q_proj,down_proj", 6);
    resumes(GRPO "--lora-rank 3", 6);
    resumes(PPO "--lora-rank 3", 12);
    resumes(PPO "--lora-rank 3 --critic $T/rm", 12);
    resumes(PRIME "--lora-rank 3", 6);
    sh(SFT "-x 4 --lora-rank 3 --adapter-output $T/first");
    resumes(SFT "--adapter $T/first", 6);
    resumes(PRIME "--adapter $T/first", 6);
    /* the base is a new model, which the seed gives again */
    resumes(
        "./train_sft --layers 1 --width 32 --heads 2 --context 48 -i $T/chat.shard --batch-tokens 200 --lora-rank 2",
        6);
}

/* Matrices that stay in the mapped files of the folder are those of a model that is read, up to the order of sums. */
static void mapped_matrices(void **state) {
    (void)state;
    sh(SFT "-x 4 --lora-rank 3 --adapter-output $T/first -o $T/a.safetensors");
    sh(SFT "-x 4 --lora-rank 3 --quantize keep -o $T/b.safetensors");
    assert_true(weights_gap("a.safetensors", "b.safetensors") < 1e-4);
    resumes(SFT "--lora-rank 3 --quantize keep", 8);
    resumes(DPO "--adapter $T/first --quantize keep", 6); /* the reference has matrices of the same files */
}

/* The state of adapters is smaller than the model, and says what it needs. */
static void adapters_need_their_base(void **state) {
    (void)state;
    struct stat small, whole;
    sh(SFT "-x 4 --lora-rank 1 --lora-targets q_proj -o $T/a.safetensors --state $T/a.state --save-steps 2");
    assert_int_equal(stat(files_path("a.state"), &small) | stat(files_path("a.safetensors"), &whole), 0);
    assert_true(small.st_size < whole.st_size);
    refused(1, "./generate -c $T/a.state ab", "a.state: holds the adapters of a training state and no model");
    refused(1, "./train_sft -i $T/chat.shard -x 4 --lora-rank 1 --lora-targets q_proj -o $T/kept --resume $T/a.state",
            "a.state: holds adapters only; name the model that they were trained on, too, with -c");
    refused(
        1,
        "./train_sft -c $T/other -i $T/chat.shard -x 4 --lora-rank 1 --lora-targets q_proj -o $T/kept --resume $T/a.state",
        "a.state: its adapters were trained on another model than that of -c");
    refused(1, SFT "-x 4 -o $T/kept --resume $T/a.state", "a.state: its adapters have rank 1");
    sh(SFT "-x 4 -o $T/b.safetensors --state $T/b.state --save-steps 2");
    refused(1, SFT "-x 4 --lora-rank 1 -o $T/kept --resume $T/b.state", "b.state: is a state without adapters");
}

/* Outputs that cannot hold the model are refused before the first step; the same base in another format continues the
 * run. */
static void formats(void **state) {
    (void)state;
    refused(1, SFT "-x 4 -o $T/x.bin", "x.bin: the format .bin holds GPT-2 only");
    refused(1, SFT "-x 4 -o $T/x/ --output-dtype q8_0", "x/: this format cannot hold q8_0");
    refused(1, SFT "-x 4 -o $T/x.gguf", "x.gguf: tokenizer: llama.cpp has no name for its pattern");
    sh(SFT "-x 1 -l 0 -o $T/base.safetensors.zst");
    sh(SFT "-x 4 --lora-rank 2 -o $T/a.safetensors --state $T/a.state --save-steps 2");
    sh("./train_sft -c $T/base.safetensors.zst -i $T/chat.shard --batch-tokens 200 -l 1e-2 -x 4 --lora-rank 2 -o $T/b.safetensors.zst --resume $T/a.state");
    assert_true(weights_gap("a.safetensors", "b.safetensors.zst") == 0);
    sh(SFT
       "-x 4 -o - | ./train_dpo -c - -i $T/prefs.shard -x 1 --precompute-ref-log-probs -o - | ./generate -c - -g 2 ab");
}

/* A chat template that the output does not hold as other programs read it, and a shard with another one, are named. */
static void templates(void **state) {
    (void)state;
    sh(SFT "-x 1 -o $T/folder/");
    assert_holds(said, "folder/: other programs will not find the chat template, which is not Jinja");
    sh("echo '{\"prompt\":\"a\",\"completion\":\"b\"}' | ./data/make_shard --quiet -i - --template chatml -o $T/chatml.shard");
    sh("./train_sft -c $T/folder -i $T/chatml.shard -x 1 --batch-tokens 200 -o $T/x.safetensors");
    assert_holds(
        said, "chatml.shard: its chat template is chatml and the model's is plain: the model is trained on the former");
    assert_holds(said, "which the output takes");
}

/* data/show distinguishes models, states and states of adapters, in files, compressed and through pipes. */
static void shown(void **state) {
    (void)state;
    sh(SFT "-x 2 -o $T/a.safetensors.zst --state $T/a.state --save-steps 2");
    sh(SFT "-x 2 -o $T/c.safetensors --lora-rank 1 --state $T/b.state --save-steps 2");
    sh("data/show --tensors $T/a.safetensors.zst");
    assert_holds(out, "a.safetensors.zst: model\nlayers 2, width 32");
    assert_holds(out, "model.layers.1.self_attn.q_proj.weight");
    assert_holds(out, "not finite: 0");
    assert_holds(out, "\"stage\":\"train_sft\"");
    run(1, "data/show $T/a.safetensors.zst > /dev/full");
    assert_holds(said, "cannot write");
    sh("data/show - < $T/a.state");
    assert_holds(out, "-: training state\n");
    assert_holds(out, "\"optimizer_step\":2");
    sh("zstd -q -c $T/b.state | data/show --tensors -");
    assert_holds(out, "-: training state of adapters\n");
    assert_holds(out, "llmc.adapter.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    refused(2, "data/show --json $T/a.state", "--json: a model has no records");
    sh("head -c 3000 $T/a.state > $T/short.state");
    refused(1, "data/show $T/short.state", "short.state: ");
}

/* A state of any number of ranks continues on any other: the state of two ranks is that of one, up to the order of
 * sums. */
static void ranks(void **state) {
    (void)state;
    if (access("llmc_mpi.so", R_OK) || system("command -v mpirun >/dev/null")) skip();
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    static const char *const lora[] = {"", "--lora-rank 2"};
    for (int k = 0; k < 2; k++)
        for (int zero = 0; zero < 3; zero++) {
            const char *mpi = "OMP_NUM_THREADS=1 mpirun --oversubscribe --bind-to none -n 2 ";
            sh("%s" SFT "-x 6 --micro-tokens 64 %s --zero %d -o $T/a.safetensors --state $T/a.state --save-steps 3",
               mpi, lora[k], zero);
            sh("%s" SFT "-x 6 --micro-tokens 64 %s --zero %d -o $T/b.safetensors --resume $T/a.state", mpi, lora[k],
               zero);
            assert_same_file("a.safetensors", "b.safetensors");
            sh(SFT "-x 6 --micro-tokens 64 %s -o $T/b.safetensors --resume $T/a.state", lora[k]);
            const double gap = weights_gap("a.safetensors", "b.safetensors");
            if (!(gap < 1e-4)) fail_msg("--zero %d: weights differ by %g", zero, gap);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_weights),     cmocka_unit_test(adapters),
                                       cmocka_unit_test(mapped_matrices), cmocka_unit_test(adapters_need_their_base),
                                       cmocka_unit_test(formats),         cmocka_unit_test(templates),
                                       cmocka_unit_test(shown),           cmocka_unit_test(ranks)};
    return cmocka_run_group_tests_name("state_runs", tests, setup, models_teardown);
}
