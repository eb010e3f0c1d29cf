/* evaluator.h - the options of the program evaluate, its model and its figures, which all its parts share.
 *
 *     static EvaluateOptions o;
 *     o = evaluate_defaults();
 *     static const Option table[] = {OPTION_FLAG("audit-tests", 0, &o.audit, "list the prompts with weak tests"), OPTION_END};
 *     Evaluator ev = {.o = &o, .options = table, .result = json_object()};
 *     evaluator_number(ev.result, "reward", mean_reward);    // null if it is not finite
 *     evaluator_progress(i, count, "records", clock_seconds());
 *
 * The parts end the program with one line on standard error. They print tables to standard error and add the same figures to
 * `result`.
 */
#ifndef LLMC_EVALUATE_EVALUATOR_H
#define LLMC_EVALUATE_EVALUATOR_H

#include "../base/clock.h"          /* clock_seconds */
#include "../base/json_text.h"      /* json_finite */
#include "../base/options.h"        /* Option, OptionList */
#include "../base/terminal.h"       /* terminal_escapes */
#include "../device.h"              /* DTYPE_AUTO */
#include "../judge/judge_options.h" /* JudgeOptions, judge_defaults */
#include "../records/inputs.h"      /* Inputs */
#include "../report/run_facts.h"    /* run_lineage_name */
#include "../reward/code_judge.h"   /* CodeOptions, code_defaults */
#include "../rollout/beam_search.h" /* BeamOptions, beam_defaults */
#include "../rollout/episodes.h"    /* EpisodeOptions, episode_defaults */
#include "../rollout/inference.h"   /* Inference, InferenceOptions, SamplingOptions, sampling_options */
#include "../rollout/thinking.h"    /* ThinkingOptions, thinking_defaults */

typedef struct EvaluateOptions {
    InferenceOptions m;
    SamplingOptions s;
    CodeOptions code;
    JudgeOptions judge;
    OptionList inputs;
    bool reward_sandbox;
    const char *reward, *reward_cmd, *reward_model, *completions, *compute, *report, *reference, *tokens;
    int64_t most, samples, micro_tokens, max_length;
    double reward_timeout;
    int64_t reward_workers;
    bool reward_group;
    int scope; /* a RewardScope */
    int rank;  /* 0: off; else 1 + a RankOf */
    const char *delimiter;
    bool ablation;
    bool completion_only, audit;
    int aggregation, weight;
    EpisodeOptions episodes;
    ThinkingOptions think;
    BeamOptions search;
} EvaluateOptions;

/* What all parts of the program share. */
typedef struct Evaluator {
    EvaluateOptions *o;
    const Option *options; /* their table */
    Inference model;
    Inputs inputs;  /* the files of --input */
    json_t *result; /* the figures, at first those of a file if there are several */
} Evaluator;

static inline EvaluateOptions evaluate_defaults(void) {
    return (EvaluateOptions){.m.dtype = DTYPE_AUTO,
                             .s = sampling_options(1, 256),
                             .episodes = episode_defaults(),
                             .think = thinking_defaults(),
                             .search = beam_defaults(),
                             .samples = 8,
                             .micro_tokens = 4096,
                             .completion_only = true,
                             .reward_timeout = 60,
                             .reward_workers = 1,
                             .code = code_defaults(),
                             .judge = judge_defaults()};
}

static inline void evaluator_number(json_t *object, const char *key, double value) {
    json_object_set_new(object, key, json_finite(value));
}

static inline void evaluator_count(json_t *object, const char *key, int64_t value) {
    json_object_set_new(object, key, json_integer(value));
}

/* The prompts, records or windows of `count` that are evaluated: the first --max-prompts of them. */
static inline int64_t evaluator_first(const Evaluator *ev, int64_t count) {
    return ev->o->most && ev->o->most < count ? ev->o->most : count;
}

/* Updates the progress line if standard error is a terminal. done == all clears it. */
static inline void evaluator_progress(int64_t done, int64_t all, const char *what, double start) {
    const double seconds = clock_seconds() - start;
    if (!terminal_escapes(STDERR_FILENO)) return;
    if (done >= all) fputs("\r\033[K", stderr);
    else
        fprintf(stderr, "\r%lld of %lld %s, %.0f s left\033[K", (long long)done, (long long)all, what,
                seconds / (double)done * (double)(all - done));
}

/* Names the model's stages of training, so that data/show --report finds the run that made it. */
static inline void evaluator_lineage(Evaluator *ev, const json_t *lineage) {
    char name[17];
    run_lineage_name(lineage, json_array_size(lineage), name);
    json_object_set_new(ev->result, "lineage", json_string(name));
}

/* Begins the figures of one of several files. */
static inline void evaluator_begin_file(Evaluator *ev, const char *name) {
    ev->result = json_object();
    json_object_set_new(ev->result, "data", json_string(name));
    fprintf(stderr, "%s:\n", name);
}

/* Adds the figures of that file to the list of all files. */
static inline void evaluator_end_file(Evaluator *ev, json_t *files) { json_array_append_new(files, ev->result); }

/* Begins the figures of all files together; `files` has those of each. */
static inline void evaluator_begin_all(Evaluator *ev, json_t *all, json_t *files) {
    ev->result = all;
    json_object_set_new(ev->result, "files", files);
    fputs("all:\n", stderr);
}

#endif
