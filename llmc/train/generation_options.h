/* generation_options.h - options of the trainers that learn from their own completions: data, sampling, reward,
 * evaluation.
 *
 *     static struct { GenerationOptions g; TrainerOptions t; } o;
 *     static const Option options[] = {
 *         GENERATION_DATA_OPTIONS(o.g),
 *         GENERATION_SAMPLING_OPTIONS(o.g, 2),                    // groups of at least two
 *         OPTION_GROUP("Reward"),
 *         GENERATION_REWARD_OPTIONS(o.g),
 *         EPISODE_OPTIONS(o.g.episodes),                         // ../rollout/episodes.h
 *         EPISODE_LOSS_OPTIONS(o.g.episodes),
 *         GENERATION_EVALUATION_OPTIONS(o.g, o.t),
 *         OPTION_END};
 *     o.g = generation_defaults();                                // before options_parse()
 *
 * The reward options have no group of their own, so that a trainer can list its own among them.
 */
#ifndef LLMC_TRAIN_GENERATION_OPTIONS_H
#define LLMC_TRAIN_GENERATION_OPTIONS_H

#include "../base/options.h"        /* OPTION_INT, OPTION_FLAG, OPTION_GROUP, OPTION_LIST, ... */
#include "../judge/judge_options.h" /* JudgeOptions, judge_defaults */
#include "../records/mix_options.h" /* MIXING_OPTIONS, MixingOptions, mixing_defaults */
#include "../reward/code_judge.h"   /* CODE_OPTIONS, CodeOptions, code_defaults */
#include "../rollout/episodes.h"    /* EpisodeOptions, episode_defaults, episodes_on, episodes_refuse_unused */
#include "../rollout/rollout.h"     /* ROLLOUT_SAMPLING_OPTIONS */
#include "../sandbox/sandbox.h"     /* SandboxOptions */
#include "../serve/agent_options.h" /* AgentOptions, agent_defaults */
#include "trainer_options.h"        /* TRAINER_EVALUATION_OPTIONS */

typedef struct GenerationOptions {
    MixingOptions mix;
    CodeOptions code;
    JudgeOptions judge;
    OptionList input, val;
    bool reward_sandbox;
    const char *reward, *reward_cmd;
    int64_t prompts, generations, max_completion, max_prompt, slots, top_k;
    bool eval_on_start, judges_pairs; /* judges_pairs: a trainer asks the judge about its own pairs */
    bool reward_group;
    int reward_scope; /* a RewardScope */
    int64_t reward_workers;
    int64_t eval_steps, eval_samples, sample_count;
    OptionList stop;
    EpisodeOptions episodes;
    AgentOptions agent;
    int64_t activation_cache; /* MiB */
    double epochs, temperature, top_p, min_p, repetition_penalty, reward_timeout;
} GenerationOptions;

/* The defaults of the trainers that sample; a trainer may change some before parsing. */
static inline GenerationOptions generation_defaults(void) {
    GenerationOptions o = {.mix = mixing_defaults(),
                           .code = code_defaults(),
                           .judge = judge_defaults(),
                           .max_prompt = 512,
                           .epochs = 1,
                           .prompts = 8,
                           .generations = 8,
                           .max_completion = 512};
    o.temperature = 1;
    o.top_p = 1;
    o.repetition_penalty = 1;
    o.slots = 64;
    o.activation_cache = 2048;
    o.reward_timeout = 60;
    o.reward_workers = 1;
    o.eval_steps = 50;
    o.eval_on_start = true;
    o.sample_count = 3;
    o.episodes = episode_defaults();
    o.agent = agent_defaults();
    return o;
}

// clang-format off
#define GENERATION_DATA_OPTIONS(o)                                                                                     \
    OPTION_GROUP("Data"),                                                                                              \
    OPTION_LIST("input",             'i', &(o).input,      "FILE",                                                     \
                "prompt shard to train on, made by make_tasks or make_shard, or a pattern; may be repeated, "         \
                "with a weight as FILE:3"),                                                                            \
    MIXING_OPTIONS((o).mix),                                                                                           \
    OPTION_LIST("val",               'j', &(o).val,        "FILE",                                                     \
                "held-out prompt shard, or a pattern; may be repeated"),                                               \
    OPTION_INT ("max-prompt-length", 0,   &(o).max_prompt, 1, 1 << 20, "leave out prompts with more tokens"),          \
    OPTION_REAL("num-train-epochs",  0,   &(o).epochs,     0.001, 1e6, "passes over the prompts")

#define GENERATION_SAMPLING_OPTIONS(o, least)                                                                          \
    OPTION_GROUP("Sampling"),                                                                                          \
    OPTION_INT("num-prompts",           'p', &(o).prompts,        1, 65536, "prompts per generation"),                 \
    OPTION_INT("num-generations",       'G', &(o).generations,    least, 4096,                                         \
               "completions per prompt (the size of a group)"),                                                        \
    OPTION_INT("max-completion-length", 'g', &(o).max_completion, 1, 1 << 20, "maximum tokens per completion"),        \
    ROLLOUT_SAMPLING_OPTIONS(o, 0.01, "temperature of sampling and of log-probabilities"),                             \
    OPTION_INT("activation-cache",      0,   &(o).activation_cache, 0, 1 << 20,                                        \
               "most memory in MiB for activations of sampling, which then serve as a step's forward pass; 0: none")

#define GENERATION_REWARD_OPTIONS(o)                                                                                   \
    OPTION_TEXT("reward",         0, &(o).reward,         "SPEC",                                                      \
                "weighted sum such as verify:1,format=hash:0.1; if not given, --reward-cmd or verify; none: only --tool-cmd's"),                \
    OPTION_TEXT("reward-cmd",     0, &(o).reward_cmd,     "PROGRAM",                                                   \
                "reward program: reads one JSON line per completion, prints one number per line"),                     \
    OPTION_REAL("reward-timeout", 0, &(o).reward_timeout, 0.01, 1e6,                                                   \
                "seconds that --reward-cmd may take for one batch"),                                                   \
    OPTION_INT ("reward-workers", 0, &(o).reward_workers, 1, 256, "copies of --reward-cmd that run at once"),          \
    OPTION_FLAG("reward-group",   0, &(o).reward_group,                                                                \
                "give --reward-cmd all completions to a prompt as one line; it prints a list of numbers"),             \
    OPTION_FLAG("reward-sandbox", 0, &(o).reward_sandbox,                                                              \
                "run reward programs in the sandbox: they read this folder, write to /tmp alone, and have no network"),       \
    OPTION_CHOICE("reward-scope", 0, &(o).reward_scope,   "last|all",                                                  \
                "what rewards read of a completion of several turns: the last turn, or what the model wrote in all")

#define GENERATION_EVALUATION_OPTIONS(o, t)                                                                               \
    OPTION_GROUP("Evaluation"),                                                                                        \
    OPTION_FLAG("eval-on-start", 0, &(o).eval_on_start, "evaluate on --val before the first step, too"),               \
    OPTION_INT("eval-steps",   0, &(o).eval_steps,   1, 1e9,                                                           \
               "evaluate on --val every N generations, and after training"),                                           \
    TRAINER_EVALUATION_OPTIONS(t),                                           \
    OPTION_INT("eval-samples", 0, &(o).eval_samples, 0, 1024,                                                          \
               "samples per prompt for pass@k; 0 computes the greedy accuracy only"),                                  \
    OPTION_INT("sample-count", 0, &(o).sample_count, 0, 256,                                                           \
               "number of completions to print before and after training"),                                            \
    CODE_OPTIONS((o).code)
// clang-format on

/* The sandbox of reward programs; NULL: none. */
static inline const SandboxOptions *generation_sandbox(const GenerationOptions *o) {
    return o->reward_sandbox ? &o->code.sandbox : NULL;
}

/* Rejects options that have no effect together with the others. programs: reward programs are given. */
static inline void generation_refuse_unused(const GenerationOptions *o, const Option *table, bool programs) {
    const OptionUse use[] = {
        {&o->eval_on_start, o->val.count > 0, "used only with --val"},
        {&o->eval_steps, o->val.count > 0, "used only with --val"},
        {&o->eval_samples, o->val.count > 0, "used only with --val"},
        {&o->reward_timeout, programs, "used only with a reward program, as --reward-cmd"},
        {&o->reward_sandbox, programs, "used only with a reward program, as --reward-cmd"},
        {&o->reward_workers, o->reward_cmd != NULL, "used only with --reward-cmd"},
        {&o->reward_group, o->reward_cmd != NULL, "used only with --reward-cmd"},
        {&o->reward_scope, episodes_on(&o->episodes) || o->agent.command, "used only with --tools or --tool-cmd"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    episodes_refuse_unused(&o->episodes, table);
}

#endif
