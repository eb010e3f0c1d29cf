/* test_checks.c - what the programs refuse before their first step: options without effect, models and data that do not
 * belong together, runs in which nothing can be scored.
 *
 * Needs all programs and data/make_shard. */
#include "../llmc/base/error.h"           /* Error, xcalloc, xmalloc */
#include "../llmc/base/io.h"              /* XXH3_64bits */
#include "../llmc/base/text.h"            /* TokenList, token_list_free */
#include "../llmc/model/model.h"          /* Model, model_free */
#include "../llmc/model/model_fits.h"     /* model_fits, FitSide, fit_extends */
#include "../llmc/model/model_text.h"     /* ModelText */
#include "../llmc/records/shard.h"        /* RECORD_PREFERENCE, Record, ShardWriter, shard_abort, ... */
#include "../llmc/rollout/stop_text.h"    /* StopTexts, stop_text_cut, stop_text_decode, stop_text_match */
#include "../llmc/text/tokenizer.h"       /* tokenizer_free, tokenizer_store, Tokenizer, tokenizer_add_special, ... */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open */
#include "files.h"                        /* files_path, files_get, files_put */
#include "models.h"                       /* assert_near, json_line_of, json_number_of, json_text_of, ... */
#include "run.h"                          /* sh, metric, has_metric */
#include "shell.h"                        /* assert_holds, said, run, out, ... */

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
    unused("./train_dpo", "--loss-type sft --beta 0.2", "--beta");
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
    unused("./train_grpo", "--loss-type kl_cov --num-iterations 2 --epsilon 0.2", "--epsilon");
    unused("./train_grpo", "--loss-type kl_cov", "--loss-type kl_cov");
    unused("./train_grpo", "--loss-type dppo --delta 2", "--delta");
    unused("./train_grpo", "--loss-type dppo --importance-sampling-level sequence", "--importance-sampling-level");
    unused("./train_grpo", "--loss-type dppo --kl-tau 0.1", "--kl-tau");
    unused("./train_grpo", "--clip-cov-ratio 0.1", "--clip-cov-ratio");
    unused("./train_grpo", "--loss-type clip_cov --kl-cov-ratio 0.1", "--kl-cov-ratio");
    unused("./train_grpo", "--advantage-estimator optimal_token_baseline --loss-type gmpo",
           "--advantage-estimator optimal_token_baseline");
    unused("./train_grpo", "--advantage-estimator optimal_token_baseline --scale-rewards none", "--scale-rewards");
    unused("./train_grpo", "--advantage-estimator rae --dynamic-sampling", "--dynamic-sampling");
    unused("./train_grpo", "--advantage-estimator rae --scale-rewards none", "--scale-rewards");
    unused("./train_grpo", "--rae-decay 0.9", "--rae-decay");
    unused("./train_grpo", "--episode-agents solver", "--episode-agents");
    unused("./train_grpo", "--positive-reward 0.5", "--positive-reward");
    unused("./train_ppo", "--positive-reward 0.5", "--positive-reward");
    unused("./train_grpo", "--group-filter length", "--group-filter");
    unused("./train_grpo", "-G 8 --num-remains-in-group 8", "--num-remains-in-group");
    unused("./train_grpo", "-G 8 --num-remains-in-group 4 --multi-objective-aggregation normalize_then_sum",
           "--num-remains-in-group");
    unused("./train_grpo", "--ppo-kl-coef 0.1", "--ppo-kl-coef");
    unused("./train_grpo", "--loss-type clip_cov --clip-cov-lb 5", "--clip-cov-lb");
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

static void options_of_programs_that_do_not_train(void **state) {
    (void)state;
    const struct {
        const char *command, *named;
    } bad[] = {
        {"./generate -c $T/base.bin -o $T/kept --temperature 0 --top-k 3 a", "--top-k: "},
        {"./generate -c $T/base.bin -o $T/kept --temperature 0 --seed 42 a", "--seed: "},
        {"./generate -c $T/base.bin -o $T/kept --temperature 0 --num-samples 2 a", "--temperature 0: "},
        {"./generate -c $T/base.bin -o $T/kept --raw --chat-template chatml a", "--chat-template: "},
        {"./evaluate -c $T/base.bin -i $T/plain.shard --num-samples 8", "--num-samples: used only for a prompt shard"},
        {"./evaluate -c $T/base.bin -i $T/plain.shard --temperature 0.5", "--temperature: "},
        {"./evaluate -c $T/base.bin -i $T/tasks.shard --max-length 8", "--max-length: "},
        {"./evaluate -c $T/base.bin -i $T/tasks.shard --prm-aggregation min", "--prm-aggregation: "},
        {"./evaluate -c $T/base.bin -i $T/tasks.shard --num-samples 0 --top-p 0.9", "--top-p: "},
        {"./evaluate --reward-model $T/rm.bin -i $T/prefs.shard -g 9",
         "--max-new-tokens: used only for a prompt shard"},
        {"./evaluate --reward-model $T/rm.bin -i $T/prefs.shard --tokenizer bytes",
         "--tokenizer: used only with -c/--checkpoint"},
        {"./evaluate -c $T/base.bin -i $T/tasks.shard --compute-curve -", "--compute-curve: must be a file"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) refused_output("kept", 2, bad[i].command, bad[i].named);
}

/* The lineage, as the table of options and the report, names the choice that `auto` stands for. */
static void the_whitening_that_is_used(void **state) {
    (void)state;
    sh("./train_ppo -c $T/base.bin -o $T/x.bin -x 1 -i $T/tasks.shard -g 4 -p 2 --reward length=3");
    sh("./data/show $T/x.bin");
    assert_holds(out, "\"whiten-advantages\":\"yes\"");
    sh("./train_ppo -c $T/base.bin -o $T/x.bin -x 1 -i $T/tasks.shard -g 4 -p 2 --reward length=3 --algo rloo");
    sh("./data/show $T/x.bin");
    assert_holds(out, "\"whiten-advantages\":\"no\"");
}

/* ---- models and data that do not belong together ---------------------------------------------------------------- */

/* A vocabulary, a tokenizer and a context that do not fit are refused, with both sides' figures; templates are noted. */
static void what_fits(void **state) {
    (void)state;
    Error e, note = {0};
    Tokenizer other;
    void *blob[2];
    size_t bytes[2];
    assert_true(tokenizer_store(&models_bytes, &blob[0], &bytes[0], &e));
    assert_true(tokenizer_bytes(&other, &e) && tokenizer_add_special(&other, "<|tool|>", &e));
    assert_true(tokenizer_store(&other, &blob[1], &bytes[1], &e));
    FitSide model = {.name = "M", .vocab = 261, .context = 16, .tokenizer = blob[0], .tokenizer_bytes = bytes[0]};
    FitSide data = {.name = "D", .shard = true, .vocab = 260, .tokenizer = blob[0], .tokenizer_bytes = bytes[0]};
    model.chat_template = "chatml";
    assert_true(model_fits(&model, &data, 16, &note, &e));
    assert_false(model_fits(&model, &data, 17, &note, &e));
    assert_string_equal(e.text, "M: its context of 16 is shorter than the longest prompt with its completion, 17");
    data.vocab = 262;
    assert_false(model_fits(&model, &data, 0, &note, &e));
    assert_holds(e.text, "D: its vocabulary of 262 does not fit the model's 261");
    data.vocab = 261;
    data.tokenizer = blob[1], data.tokenizer_bytes = bytes[1]; /* has one token more */
    assert_false(model_fits(&model, &data, 0, &note, &e));
    assert_holds(e.text,
                 "D: it was made with a different tokenizer than the model's (261 tokens, and the model's 260)");
    assert_true(fit_extends(&model, &data) && !fit_extends(&data, &model));
    model.tokenizer = blob[1], model.tokenizer_bytes = bytes[1]; /* the model has all tokens of the data */
    data.tokenizer = blob[0], data.tokenizer_bytes = bytes[0];
    assert_true(model_fits(&model, &data, 0, &note, &e));
    assert_string_equal(note.text, "");
    data.chat_template = "plain";
    assert_true(model_fits(&model, &data, 0, &note, &e));
    assert_holds(note.text, "D: its chat template is plain, whose turns end with <|endoftext|>; that of M is chatml, "
                            "whose turns end with <|im_end|>");
    free(blob[0]), free(blob[1]), tokenizer_free(&other);
}

/* One token that differs is found, whatever the number of tokens. */
static void one_other_token(void **state) {
    (void)state;
    Error e;
    Tokenizer a, b;
    void *blob[2];
    size_t bytes[2];
    assert_true(tokenizer_bytes(&a, &e) && tokenizer_add_special(&a, "<|tool|>", &e));
    assert_true(tokenizer_bytes(&b, &e) && tokenizer_add_special(&b, "<|user|>", &e));
    assert_true(tokenizer_store(&a, &blob[0], &bytes[0], &e) && tokenizer_store(&b, &blob[1], &bytes[1], &e));
    const FitSide policy = {.name = "P", .vocab = 261, .tokenizer = blob[0], .tokenizer_bytes = bytes[0]};
    const FitSide judge = {.name = "J", .vocab = 261, .tokenizer = blob[1], .tokenizer_bytes = bytes[1]};
    assert_false(model_fits(&judge, &policy, 0, NULL, &e));
    assert_string_equal(e.text,
                        "J: it has a different tokenizer than P (token 260 is '<|tool|>' in P and '<|user|>' in J)");
    free(blob[0]), free(blob[1]), tokenizer_free(&a), tokenizer_free(&b);
}

#define POLICY  "-c $T/base.bin -o $T/x.bin -x 1 "
#define LONGEST "its context of 8 is shorter than the longest prompt with its completion, "

/* Every second model of every program is checked before the first step. */
static void second_models_with_a_short_context(void **state) {
    (void)state;
    const char *commands[] = {
        "./train_dpo " POLICY "-i $T/prefs.shard --reference $T/short.bin",
        "./train_dpo " POLICY "-i $T/prefs.shard --reference $T/short.bin --precompute-ref-log-probs",
        "./train_dpo " POLICY "-i $T/tasks.shard --online --reward-model $T/shortrm.bin",
        "./train_dpo " POLICY "-i $T/tasks.shard --online --reward verify --online-loss xpo --reference $T/short.bin",
        "./train_grpo " POLICY "-i $T/tasks.shard -g 9 --beta 0.1 --reference $T/short.bin",
        "./train_ppo " POLICY "-i $T/tasks.shard -g 9 --reference $T/short.bin",
        "./train_ppo " POLICY "-i $T/tasks.shard -g 9 --reward-model $T/shortrm.bin",
        "./train_ppo " POLICY "-i $T/tasks.shard -g 9 --gold $T/shortrm.bin",
        "./train_ppo " POLICY "-i $T/tasks.shard -g 9 --critic $T/short.bin",
        "./evaluate -c $T/base.bin -i $T/tasks.shard -g 9 --reward-model $T/shortrm.bin",
    };
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        run(1, commands[i]);
        assert_holds(said, LONGEST);
        if (strstr(said, "step ")) fail_msg("%s: %s", commands[i], said);
    }
}

static void a_scorer_is_no_policy(void **state) {
    (void)state;
    run(1, "./train_grpo -c $T/rm.bin -o $T/x.bin -x 1 -i $T/tasks.shard");
    assert_holds(said, "rm.bin: it is a reward model, expected a language model");
    run(1, "./train_dpo -c $T/rm.bin -o $T/x.bin -x 1 -i $T/prefs.shard");
    assert_holds(said, "rm.bin: it is a reward model, expected a language model");
    run(1, "./train_grpo " POLICY "-i $T/tasks.shard --beta 0.1 --reference $T/rm.bin");
    assert_holds(said, "rm.bin: it is a reward model, expected a language model");
    sh("./train_ppo " POLICY "-i $T/tasks.shard -p 2 -g 4 --critic $T/base.bin --critic-output $T/critic.bin");
    run(1, "./train_grpo -c $T/critic.bin -o $T/x.bin -x 1 -i $T/tasks.shard");
    assert_holds(said, "critic.bin: it is a critic, expected a language model");
}

/* The default of make_shard for texts is another template than that of a model of conversations. */
static void templates_that_differ(void **state) {
    (void)state;
    const char *commands[] = {
        "./train_dpo -c $T/chatml.bin -o $T/x.bin -x 1 -i $T/prefs.shard",
        "./train_rm -c $T/chatml.bin -o $T/x.bin -x 1 -i $T/prefs.shard",
        "./train_grpo -c $T/chatml.bin -o $T/x.bin -x 1 -i $T/tasks.shard -g 4 -p 2",
        "./train_ppo -c $T/chatml.bin -o $T/x.bin -x 1 -i $T/tasks.shard -g 4 -p 2",
        "./evaluate -c $T/chatml.bin -i $T/tasks.shard -g 4 --num-samples 0",
        "./generate -c $T/chatml.bin -i $T/tasks.shard -g 4",
    };
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        run(0, commands[i]);
        assert_holds(said, "its chat template is plain, whose turns end with <|endoftext|>; that of ");
        assert_holds(said, "is chatml, whose turns end with <|im_end|>");
    }
    sh("./train_dpo " POLICY "-i $T/prefs.shard");
    assert_null(strstr(said, "chat template"));
}

/* Fine-tuning teaches the template of its data: the output has it, and the tokens that it needs. */
static void fine_tuning_takes_the_template(void **state) {
    (void)state;
    sh("./train_sft -c $T/base.bin -i $T/llama.shard -o $T/llama.bin -x 1");
    assert_holds(said, "4 tokens are new to the model, usually special tokens of a chat template");
    assert_holds(said, "the model is trained on the former, which the output takes");
    sh("./evaluate -c $T/llama.bin -i $T/llama.shard");
    assert_null(strstr(said, "warning"));
    sh("./train_dpo -c $T/llama.bin -i $T/llamaprefs.shard -o $T/x.bin -x 1");
    assert_null(strstr(said, "chat template"));
    /* a model without enough rows */
    run(1, "./train_dpo " POLICY "-i $T/many.shard");
    assert_holds(said, "does not fit the model's 260; make the shard with the model's tokenizer");
}

/* ---- runs without a result -------------------------------------------------------------------------------------- */

static void nothing_can_be_scored(void **state) {
    (void)state;
    const char *commands[] = {
        "./train_ppo " POLICY "-i $T/prompts.shard -g 4",
        "./train_grpo " POLICY "-i $T/prompts.shard -g 4",
        "./train_grpo " POLICY "-i $T/prompts.shard -g 4 --reward cosine:1,exact:1",
        "./train_ppo " POLICY "-i $T/prompts.shard -g 4 --reward-model $T/rm.bin --gold-reward verify",
        "./train_dpo " POLICY "-i $T/prompts.shard -g 4 --online --reward verify",
        "./evaluate -c $T/base.bin -i $T/prompts.shard -g 4 --reward verify",
    };
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        run(1, commands[i]);
        assert_holds(said, "no completion can be scored: no prompt has an answer that the reward can check");
    }
    run(1, "./evaluate -c $T/base.bin -i $T/prompts.shard -g 4");
    assert_holds(said, "no prompt has a task and an answer that can be verified");
    run(1, "./train_grpo " POLICY "-i $T/tasks.shard -j $T/prompts.shard -g 4 -p 2");
    assert_holds(said, "--val ");
    assert_holds(said, "no prompt has an answer that can be verified");
    sh("./train_grpo " POLICY "-i $T/prompts.shard -g 4 -p 2 --reward length=3");
}

/* Held-out prompts without answers are scored by the reward model or program: RLHF's figure. */
static void held_out_rewards(void **state) {
    (void)state;
    sh("./train_ppo " POLICY "-i $T/prompts.shard -j $T/prompts.shard -g 4 -p 2 --metrics $T/m.jsonl --reward-cmd "
       "'while read -r line; do echo 0.25; done'");
    assert_near(metric("m.jsonl", 0, "eval_reward"), 0.25, 0);
    assert_false(has_metric("m.jsonl", 0, "eval_accuracy"));
    assert_holds(said, "held-out reward: 0.2500 before, 0.2500 after");
    unlink(files_path("m.jsonl"));
    sh("./train_ppo " POLICY "-i $T/prompts.shard -j $T/prompts.shard -g 4 -p 2 --metrics $T/m.jsonl "
       "--reward-model $T/rm.bin");
    assert_true(isfinite(metric("m.jsonl", 0, "eval_reward")));
    unlink(files_path("m.jsonl"));
}

static void validation_without_tokens(void **state) {
    (void)state;
    run(1, "./train_sft " TINY "-i $T/plain.shard -j $T/cut.shard --max-length 16 -o $T/x.bin -x 1 --best $T/b.bin");
    assert_holds(said, "cut.shard: no record has a token to train on within --max-length");
    assert_int_equal(access(files_path("b.bin"), F_OK), -1);
}

static void few_steps(void **state) {
    (void)state;
    sh("./train_sft " TINY "-i $T/plain.shard -o $T/x.bin");
    assert_holds(said, "all epochs are 1 optimizer step, each of which takes as much as the whole shard has; lower "
                       "--batch-tokens");
    sh("./train_dpo -c $T/base.bin -i $T/prefs.shard -o $T/x.bin --per-device-train-batch-size 8");
    assert_holds(said, "all epochs are 1 optimizer step");
    sh("./train_sft " TINY "-i $T/plain.shard -o $T/x.bin --batch-tokens 2");
    assert_null(strstr(said, "all epochs are"));
}

static void evaluation_on_start(void **state) {
    (void)state;
    const char *commands[] = {"./train_sft " POLICY "-i $T/plain.shard -j $T/plain.shard --batch-tokens 16",
                              "./train_rm " POLICY "-i $T/prefs.shard -j $T/prefs.shard",
                              "./train_dpo " POLICY "-i $T/prefs.shard -j $T/prefs.shard",
                              "./train_grpo " POLICY "-i $T/tasks.shard -j $T/tasks.shard -g 4 -p 2"};
    for (int i = 0; i < 4; i++) {
        sh("%s", commands[i]);
        assert_holds(said, i < 3 ? "eval  step 0 | " : "eval  before | ");
        sh("%s --no-eval-on-start", commands[i]);
        assert_null(strstr(said, i < 3 ? "eval  step 0 | " : "eval  before | "));
        assert_holds(said, "eval  step 1 | ");
    }
}

/* ---- resuming --------------------------------------------------------------------------------------------------- */

#define RUN "./train_sft " TINY "-i $T/plain.shard -j $T/plain.shard --batch-tokens 16 -l 1e-3 -o $T/run.bin "

static void other_options_on_resuming(void **state) {
    (void)state;
    sh(RUN "-x 4 --save-steps 4");
    run(1, RUN "-x 8 --resume --seed 7 --weight-decay 0.5 --logging-steps 2");
    assert_holds(said, "run.bin.state: the run that wrote it had other options: --seed 42 (here 7), "
                       "--weight-decay 0 (here 0.5); repeat them");
    run(1, "./train_sft -i $T/plain.shard --batch-tokens 16 -l 1e-3 -o $T/run.bin -x 8 --resume --layers 2");
    assert_holds(said, "--layers 1 (here 2)");
    run(1, "./train_sft -c $T/base.bin -i $T/plain.shard --batch-tokens 16 -l 1e-3 -o $T/run.bin -x 8 --resume");
    assert_holds(said, "--checkpoint not given (here ");
    run(1, RUN "-x 3 --resume");
    assert_holds(said, "--max-steps 4 (here 3)");
    sh("rm $T/run.bin");
    sh(RUN "-x 4 --resume");
    assert_holds(said, "run.bin.state: the run had reached its last step, 4: nothing is left to train");
    assert_int_equal(access(files_path("run.bin"), F_OK), 0);
    /* longer, without the options that the state has, evaluated differently */
    sh("./train_sft -i $T/plain.shard --batch-tokens 16 -l 1e-3 -o $T/run.bin -x 8 --resume");
    sh("./data/show $T/run.bin");
    assert_holds(out, "\"layers\":\"1\"");
    assert_holds(out, "\"max-steps\":\"8\"");
    run(1, RUN "-x 4 --state $T/none --resume");
    assert_holds(said, "none: there is no state to resume");
}

/* Values of any length are compared and kept whole. */
static void long_values_on_resuming(void **state) {
    (void)state;
    char one[1000], other[1000];
    static const char grpo[] = "./train_grpo -c $T/base.bin -o $T/long.bin -i $T/tasks.shard -g 4 -p 2 --save-steps 1 "
                               "--reward command --reward-cmd 'while read -r x; do echo 1; done; : %0600d' %s";
    snprintf(one, sizeof one, grpo, 1, "-x 1");
    sh("%s", one);
    sh("./data/show $T/long.bin | grep -q '0000000001\"'");
    snprintf(other, sizeof other, grpo, 2, "-x 2 --resume");
    run(1, other);
    assert_holds(said, "long.bin.state: the run that wrote it had other options: --reward-cmd while read");
    snprintf(one, sizeof one, grpo, 1, "-x 2 --resume");
    sh("%s", one);
}

static void other_files_on_resuming(void **state) {
    (void)state;
#define PPO                                                                                                            \
    "./train_ppo -c $T/base.bin -o $T/ppo.bin -i $T/tasks.shard -g 4 -p 2 --reward-model $T/judge.bin --save-steps 1 "
    sh("cp $T/rm.bin $T/judge.bin");
    sh(PPO "-x 4");
    sh("cp $T/rm.bin $T/moved.bin");
    sh("./train_ppo -c $T/base.bin -o $T/ppo.bin -i $T/tasks.shard -g 4 -p 2 --reward-model $T/moved.bin -x 8 --resume");
    sh("cp $T/otherrm.bin $T/judge.bin");
    run(1, PPO "-x 12 --resume");
    assert_holds(said, "judge.bin: it is not the file of --reward-model that the run began with");
}

/* Copies a state without the tensors whose names have this beginning, and with the right checksum. */
static void copy_without(const char *from, const char *to, const char *left_out) {
    size_t n, end = 0;
    uint64_t length;
    uint8_t *bytes = files_get(files_path(from), &n), *data = (uint8_t *)xmalloc(n);
    memcpy(&length, bytes, 8);
    json_t *header = json_loadb((const char *)bytes + 8, (size_t)length, 0, NULL), *kept = json_object(), *value;
    const char *name;
    const uint8_t *before = bytes + 8 + length;
    json_object_foreach(header, name, value) {
        json_t *offsets = json_object_get(value, "data_offsets");
        const size_t first = (size_t)json_integer_value(json_array_get(offsets, 0));
        const size_t size = (size_t)json_integer_value(json_array_get(offsets, 1)) - first;
        if (!strncmp(name, left_out, strlen(left_out))) continue;
        json_object_set(kept, name, value);
        if (!offsets) continue;
        memcpy(data + end, before + first, size);
        json_array_set_new(offsets, 0, json_integer((json_int_t)end));
        json_array_set_new(offsets, 1, json_integer((json_int_t)(end += size)));
    }
    char *text = json_dumps(kept, JSON_COMPACT);
    const size_t used = strlen(text), padded = (used + 7) / 8 * 8;
    uint8_t *out_bytes = (uint8_t *)xcalloc(1, 8 + padded + end);
    memcpy(out_bytes, &(uint64_t){padded}, 8);
    memset(out_bytes + 8, ' ', padded);
    memcpy(out_bytes + 8, text, used);
    memcpy(out_bytes + 8 + padded, data, end);
    const uint64_t hash = XXH3_64bits(out_bytes, 8 + padded + end - 8);
    memcpy(out_bytes + 8 + padded + end - 8, &hash, 8);
    files_put(files_path(to), out_bytes, 8 + padded + end);
    free(bytes), free(data), free(text), free(out_bytes);
    json_decref(header), json_decref(kept);
}

static void states_without_moments(void **state) {
    (void)state;
    sh(RUN "-x 2 --save-steps 2 --state $T/whole.state");
    copy_without("whole.state", "same.state", "none");
    sh(RUN "-x 4 --resume $T/same.state");
    copy_without("whole.state", "part.state", "llmc.optimizer.v.");
    run(1, RUN "-x 4 --resume $T/part.state");
    assert_holds(said, "part.state: has no tensor llmc.optimizer.v.wte, which the state of this model needs");
    copy_without("whole.state", "part.state", "llmc.optimizer.");
    run(1, RUN "-x 4 --resume $T/part.state");
    assert_holds(said, "part.state: has no tensor llmc.optimizer.m.wte, which the state of this model needs");
}

/* ---- ends of completions ---------------------------------------------------------------------------------------- */

/* The text ends before the first stop text, in the token in which that ends, wherever the borders of tokens are. Checked
 * against a search in the whole text. */
static void stop_texts(void **state) {
    (void)state;
    Error e;
    Tokenizer t;
    if (!tokenizer_open(&t, "tests/golden/tokenizer_small.json", &e)) fail_msg("%s", e.text);
    const StopTexts s = {.tokenizer = &t, .text = {"the e", "User:", "\n\n"}, .count = 3};
    const ModelText text = {.present = true, .tokenizer = t};
    const char *said_texts[] = {"at the end of the example",
                                "a line\n\nand another User: one",
                                "nothing to stop at",
                                "User:",
                                "the User:\n\n",
                                "UserUser:",
                                ""};
    int wide = 0;
    for (size_t i = 0; i < sizeof said_texts / sizeof *said_texts; i++) {
        TokenList ids = {0};
        if (!tokenizer_encode(&t, said_texts[i], strlen(said_texts[i]), 0, &ids, &e)) fail_msg("%s", e.text);
        const char *first = NULL, *end = NULL, *met = NULL, *found = NULL;
        for (int k = 0; k < s.count; k++) {
            const char *at = strstr(said_texts[i], s.text[k]);
            if (at && (!end || at + strlen(s.text[k]) < end)) first = at, end = at + strlen(s.text[k]), met = s.text[k];
        }
        size_t bytes = 0;
        for (int32_t n = 1; n <= ids.count; n++) {
            size_t length;
            tokenizer_token(&t, ids.ids[n - 1], &length);
            wide += length > 1;
            const size_t before = bytes;
            bytes += length;
            const size_t cut = stop_text_cut(&s, ids.ids, n);
            const bool ends = end && (size_t)(end - said_texts[i]) > before && (size_t)(end - said_texts[i]) <= bytes;
            if (!end || (size_t)(end - said_texts[i]) > bytes) assert_int_equal(cut, 0);
            assert_int_equal(stop_text_match(&s, ids.ids, n, &found), cut);
            assert_ptr_equal(found, ends ? met : NULL);
            if (!ends) continue;
            assert_int_equal(cut, bytes - (size_t)(first - said_texts[i]));
            char *kept = stop_text_decode(&s, &text, ids.ids, n, NULL);
            assert_int_equal(strlen(kept), first - said_texts[i]);
            assert_memory_equal(kept, said_texts[i], strlen(kept));
            free(kept);
            break;
        }
        token_list_free(&ids);
    }
    assert_true(wide > 10); /* the tokens are longer than a byte */
    tokenizer_free(&t);
}

/* A model that writes "one User: two" after a prompt of two tokens. */
static void programs_stop_at_a_text(void **state) {
    (void)state;
    const char *script = "one User: two";
    int32_t tokens[64] = {0};
    for (int i = 0; script[i]; i++) tokens[1 + i] = (unsigned char)script[i];
    Model m = models_scripted(64, tokens, NULL, 1 + (int)strlen(script));
    models_save(&m, "script.bin", false, "plain");
    model_free(&m);
    sh("./generate -c $T/script.bin --temperature 0 --stop User: ab");
    assert_string_equal(out, "one \n");
    sh("./generate -c $T/script.bin --temperature 0 --stop 'User: t' --stop zzz ab");
    assert_string_equal(out, "one \n");
    sh("./generate -c $T/script.bin --temperature 0 --stop zzz ab");
    assert_string_equal(out, "one User: two\n");
    sh("./generate -c $T/script.bin --temperature 0 --stop User: --json ab");
    json_t *row = json_line_of(out, 0);
    assert_string_equal(json_text_of(row, "completion"), "one ");
    assert_true(json_is_true(json_object_get(row, "finished")));
    assert_int_equal(json_array_size(json_object_get(row, "tokens")), 9);
    json_decref(row);
    /* the verifier sees the same text */
    sh("./evaluate -c $T/script.bin -i $T/one.shard --num-samples 0 --stop ' User:'");
    row = json_line_of(out, 0);
    assert_near(json_number_of(row, "accuracy"), 1, 0);
    json_decref(row);
    sh("./train_grpo -c $T/script.bin -i $T/one.shard -o $T/x.bin -x 1 -l 0 -p 2 -G 2 -g 16 --stop ' User:' "
       "--metrics $T/stop.jsonl");
    assert_near(metric("stop.jsonl", 0, "reward"), 1, 0);
    assert_near(metric("stop.jsonl", 0, "completions/mean_length"), 9, 0);
    assert_near(metric("stop.jsonl", 0, "completions/clipped_ratio"), 0, 0);
    refused_output("kept", 2, "./generate -c $T/script.bin --stop '' -o $T/kept ab", "--stop: the text is empty");
}

/* <|endoftext|> ends a completion in every program, also if turns end with another token. */
static void the_end_of_text_ends(void **state) {
    (void)state;
    const char *script = "one";
    int32_t tokens[64] = {0};
    for (int i = 0; script[i]; i++) tokens[1 + i] = (unsigned char)script[i];
    Model m = models_scripted(64, tokens, NULL, 1 + (int)strlen(script)); /* then <|endoftext|> */
    models_save(&m, "eos.bin", false, "chatml");
    model_free(&m);
    sh("./generate -c $T/eos.bin --raw --temperature 0 --json ab");
    json_t *row = json_line_of(out, 0);
    assert_string_equal(json_text_of(row, "completion"), "one");
    assert_true(json_is_true(json_object_get(row, "finished")));
    json_decref(row);
    sh("./evaluate -c $T/eos.bin -i $T/one.shard --num-samples 0 -g 16");
    row = json_line_of(out, 0);
    assert_near(json_number_of(row, "finished"), 1, 0);
    assert_near(json_number_of(row, "accuracy"), 1, 0);
    json_decref(row);
    sh("./train_grpo -c $T/eos.bin -i $T/one.shard -o $T/x.bin -x 1 -l 0 -p 2 -G 2 -g 16 --metrics $T/eos.jsonl");
    assert_near(metric("eos.jsonl", 0, "completions/clipped_ratio"), 0, 0);
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

static void numbers_that_are_not_finite(void **state) {
    (void)state;
    put("margin.jsonl", "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\",\"margin\":1e300}\n");
    run(1, "./data/make_shard -i $T/margin.jsonl -o $T/margin.shard");
    assert_holds(said, "line 1: field 'margin': is 1e+300, expected at most 3.4e38 in size");
    Error e;
    ShardWriter w = models_shard("margin.shard", RECORD_PREFERENCE, "plain");
    int32_t ids[] = {'a', 'b', 'c'};
    int32_t length[] = {1, 1};
    const Record r = {.tokens = ids, .count = 3, .prompt = 1, .completions = 2, .length = length, .margin = INFINITY};
    assert_false(shard_add(&w, &r, &e));
    assert_holds(e.text, "has a margin that is not finite");
    shard_abort(&w);
}

static int setup(void **state) {
    if (models_setup(state)) return 1;
    put("plain.jsonl", "{\"prompt\":\"one\",\"completion\":\"two\"}\n{\"prompt\":\"three\",\"completion\":\"four\"}\n");
    put("chat.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"one\"},"
                      "{\"role\":\"assistant\",\"content\":\"two\"}]}\n");
    put("prefs.jsonl", "{\"prompt\":\"a prompt\",\"chosen\":\"good\",\"rejected\":\"bad\"}\n"
                       "{\"prompt\":\"another\",\"chosen\":\"better\",\"rejected\":\"worse\"}\n");
    put("tasks.jsonl", "{\"prompt\":\"one\",\"answer\":\"1\",\"task\":\"exact\"}\n"
                       "{\"prompt\":\"two\",\"answer\":\"2\",\"task\":\"exact\"}\n");
    put("prompts.jsonl", "{\"prompt\":\"one\"}\n{\"prompt\":\"two\"}\n");
    put("one.jsonl", "{\"prompt\":\"ab\",\"answer\":\"one\",\"task\":\"exact\"}\n"
                     "{\"prompt\":\"cd\",\"answer\":\"one\",\"task\":\"exact\"}\n");
    put("shortprefs.jsonl", "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}\n");
    put("cut.jsonl", "{\"prompt\":\"a prompt that is longer than sixteen tokens\",\"completion\":\"two\"}\n");
    const char *shards[] = {"plain", "chat", "prefs", "tasks", "prompts", "one", "cut", "shortprefs"};
    for (int i = 0; i < 8; i++) sh("data/make_shard --quiet -i $T/%s.jsonl -o $T/%s.shard", shards[i], shards[i]);
    sh("data/make_shard --quiet --template llama -i $T/plain.jsonl -o $T/llama.shard");
    sh("data/make_shard --quiet --template llama -i $T/prefs.jsonl -o $T/llamaprefs.shard");
    sh("data/make_shard --quiet --tokenizer tests/golden/tokenizer_small.json -i $T/prefs.jsonl -o $T/many.shard");
    sh("./train_sft " TINY "-i $T/plain.shard -o $T/base.bin -x 1");
    sh("./train_sft " TINY "-i $T/chat.shard -o $T/chatml.bin -x 1");
    sh("./train_sft --layers 1 --width 16 --heads 1 --context 8 -i $T/plain.shard -o $T/short.bin -x 1");
    sh("./train_rm -c $T/base.bin -i $T/prefs.shard -o $T/rm.bin -x 1");
    sh("./train_rm -c $T/base.bin -i $T/prefs.shard -o $T/otherrm.bin -x 2 -l 1e-2");
    sh("./train_rm -c $T/short.bin -i $T/shortprefs.shard -o $T/shortrm.bin -x 1");
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_of_all_trainers),
        cmocka_unit_test(options_of_one_trainer),
        cmocka_unit_test(options_of_programs_that_do_not_train),
        cmocka_unit_test(the_whitening_that_is_used),
        cmocka_unit_test(what_fits),
        cmocka_unit_test(one_other_token),
        cmocka_unit_test(second_models_with_a_short_context),
        cmocka_unit_test(a_scorer_is_no_policy),
        cmocka_unit_test(templates_that_differ),
        cmocka_unit_test(fine_tuning_takes_the_template),
        cmocka_unit_test(nothing_can_be_scored),
        cmocka_unit_test(held_out_rewards),
        cmocka_unit_test(validation_without_tokens),
        cmocka_unit_test(few_steps),
        cmocka_unit_test(evaluation_on_start),
        cmocka_unit_test(other_options_on_resuming),
        cmocka_unit_test(long_values_on_resuming),
        cmocka_unit_test(other_files_on_resuming),
        cmocka_unit_test(states_without_moments),
        cmocka_unit_test(stop_texts),
        cmocka_unit_test(programs_stop_at_a_text),
        cmocka_unit_test(the_end_of_text_ends),
        cmocka_unit_test(numbers_that_are_not_finite),
    };
    return cmocka_run_group_tests(tests, setup, models_teardown);
}
