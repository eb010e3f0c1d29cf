/* test_checks.c - what the programs refuse before their first step: options without effect, models and data that do not
 * belong together, runs in which nothing can be scored.
 *
 * Needs all programs and data/make_shard. */
#include "models.h" /* models_setup, models_teardown */
#include "shell.h"  /* refused_output */

#define TINY "--layers 1 --width 16 --heads 1 --context 64 "

/* ---- options without effect ------------------------------------------------------------------------------------- */

/* A usage error of one line that names the option; no file is opened, so none has to exist. */
static void unused(const char *program, const char *options, const char *named) {
    char command[400], message[100];
    snprintf(command, sizeof command, "%s -c $T/none.bin -i $T/none.shard -o $T/kept %s", program, options);
    snprintf(message, sizeof message, "%s: %s: ", strrchr(program, '/') + 1, named);
    refused_output("kept", 2, command, message);
}

static void options_of_all_trainers(void **state) {
    (void)state;
    const char *programs[] = {"./train_sft", "./train_rm", "./train_dpo", "./train_grpo", "./train_ppo"};
    for (int i = 0; i < 5; i++) {
        unused(programs[i], "--heads 2", "--heads");
        unused(programs[i], "--context 32", "--context");
        unused(programs[i], "--vocab 300", "--vocab");
        unused(programs[i], "--lora-alpha 32", "--lora-alpha"); /* the default's value, too */
        unused(programs[i], "--min-lr-rate 0.1 --lr-scheduler-type constant", "--min-lr-rate");
        unused(programs[i], "--decay-steps 10", "--decay-steps");
        unused(programs[i], "-x 10 --num-train-epochs 2", "--num-train-epochs");
        unused(programs[i], "--eval-steps 5", "--eval-steps");
    }
}

static void options_of_one_trainer(void **state) {
    (void)state;
    unused("./train_sft", "--best $T/b", "--best");
    unused("./train_sft", "--sample-tokens 9", "--sample-tokens");
    unused("./train_rm", "--kind orm --use-margin", "--use-margin");
    unused("./train_rm", "--train-on-last-step-only", "--train-on-last-step-only");
    unused("./train_dpo", "--simpo-gamma 1", "--simpo-gamma");
    unused("./train_dpo", "--loss-type hinge --label-smoothing 0.1", "--label-smoothing");
    unused("./train_dpo", "--ref-model-sync-steps 3", "--ref-model-sync-steps");
    unused("./train_dpo", "--temperature 0.5", "--temperature");
    unused("./train_dpo", "--online --reward verify --max-length 9", "--max-length");
    unused("./train_dpo", "--online --reward verify --xpo-alpha 1e-3", "--xpo-alpha");
    unused("./train_grpo", "--loss-type sapo --epsilon 0.2", "--epsilon");
    unused("./train_grpo", "--loss-type cispo --epsilon 0.2", "--epsilon");
    unused("./train_grpo", "--loss-type vespo --epsilon-high 0.2", "--epsilon-high");
    unused("./train_grpo", "--loss-type cispo --delta 2", "--delta");
    unused("./train_grpo", "--loss-type gspo --importance-sampling-level token", "--importance-sampling-level");
    unused("./train_grpo", "--loss-type rloo --scale-rewards group", "--scale-rewards");
    unused("./train_grpo", "--entropy-target 0.1", "--entropy-target");
    unused("./train_grpo", "--kl-estimator k2", "--kl-estimator");
    unused("./train_grpo", "--beta 0.1 --kl-in reward --use-bias-correction-kl", "--use-bias-correction-kl");
    unused("./train_grpo", "--beta 0.1 --kl-estimator k1 --no-use-bias-correction-kl", "--kl-estimator k1");
    unused("./train_grpo", "--beta 0.1 --kl-estimator k1 --loss-type gmpo", "--kl-estimator k1");
    unused("./train_grpo", "--max-resamples 3", "--max-resamples");
    unused("./train_grpo", "--reward-timeout 3", "--reward-timeout");
    unused("./train_ppo", "--algo rloo --lam 0.9", "--lam");
    unused("./train_ppo", "--algo rloo --dual-clip 3", "--dual-clip");
    unused("./train_ppo", "--algo reinforce --cliprange 0.1", "--cliprange");
    unused("./train_ppo", "--algo remax --critic $T/c", "--critic");
    unused("./train_ppo", "--critic-warmup 3", "--critic-warmup");
    unused("./train_ppo", "--kl-target 3", "--kl-target");
    unused("./train_ppo", "--algo a2c --target-kl 3", "--target-kl");
    unused("./train_ppo", "--penalty-reward-value -3", "--penalty-reward-value");
}

static int setup(void **state) { return models_setup(state); }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_of_all_trainers),
        cmocka_unit_test(options_of_one_trainer),
    };
    return cmocka_run_group_tests(tests, setup, models_teardown);
}
