/* usage.h - checks of the command line, before and after the kind of the data is known.
 *
 *     check_usage(&ev);
 *     check_kind(&ev, &shard, "chat", false);
 */
#ifndef LLMC_EVALUATE_USAGE_H
#define LLMC_EVALUATE_USAGE_H

#include "../base/error.h"          /* usage_error, Error, die */
#include "../base/options.h"        /* option_given, OptionUse, options_refuse_unused */
#include "../judge/judge_options.h" /* judge_given, JUDGE_OF_PAIRS, judge_refuse_unused */
#include "../records/inputs.h"      /* inputs_open, inputs_whole */
#include "../records/shard.h"       /* RECORD_PROMPT, RECORD_CHAT, RECORD_PREFERENCE, Shard */
#include "../reward/code_judge.h"   /* CODE_USES */
#include "../reward/reward_model.h" /* PRM_LAST */
#include "../rollout/beam_search.h" /* SEARCH_BEAM, SEARCH_DVTS, SEARCH_REBASE, SEARCH_KINDS, ... */
#include "../rollout/episodes.h"    /* episodes_on, episodes_refuse_unused */
#include "../rollout/inference.h"   /* sampling_refuse_unused */
#include "../rollout/thinking.h"    /* thinking_on, thinking_refuse_unused */
#include "../rollout/votes.h"       /* VOTES_REWARD */
#include "evaluator.h"              /* EvaluateOptions, Evaluator */

static inline void check_usage(Evaluator *ev) {
    EvaluateOptions *o = ev->o;
    Error e;
    if (!inputs_open(&ev->inputs, "-i/--input", &o->inputs, &e) || !inputs_whole(&ev->inputs, "-i/--input", false, &e))
        usage_error("%s", e.text);
    const char *const files[] = {o->m.checkpoint, ev->inputs.count ? ev->inputs.path[0] : NULL, o->reward_model,
                                 o->judge.file};
    int pipes = 0;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) pipes += files[i] && !strcmp(files[i], "-");
    if (!o->m.checkpoint && !o->reward_model && !o->audit && !judge_given(&o->judge))
        usage_error("-c/--checkpoint is required (or --reward-model, --judge, or --audit-tests)");
    if (o->audit && (o->m.checkpoint || o->reward_model))
        usage_error("--audit-tests: needs no model; leave -c and --reward-model out");
    if (!ev->inputs.count) usage_error("-i/--input is required");
    for (int i = 0; ev->inputs.count > 1 && i < ev->inputs.count; i++)
        if (!strcmp(ev->inputs.path[i], "-")) usage_error("-i/--input: standard input cannot be one of several files");
    if (ev->inputs.count > 1 && o->reference) usage_error("--reference: compares two models on one file; give -i once");
    if (pipes > 1) usage_error("-c, -i, --reward-model, --judge: only one of them can be standard input");
    const struct {
        const char *option, *path;
    } out[] = {
        {"completions", o->completions}, {"tokens", o->tokens}, {"compute-curve", o->compute}, {"report", o->report}};
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        if (out[i].path && !strcmp(out[i].path, "-"))
            usage_error("--%s: must be a file, because standard output receives the result", out[i].option);
    if (o->report && o->compute && o->reference)
        usage_error("--report: writes the page of --compute-curve or that of --reference; give only one of them");
    if (o->reference && !strcmp(o->reference, "-")) usage_error("--reference: must be a file, not standard input");
    if (o->reward_model && (o->reward || o->reward_cmd))
        usage_error("--reward-model and --reward: give only one of them");
}

/* Rejects options of --search that have no effect, and what it cannot do; sets its defaults. */
static inline void check_search_options(Evaluator *ev) {
    EvaluateOptions *o = ev->o;
    Error e;
    BeamKind kind[SEARCH_KINDS];
    bool uses[SEARCH_KINDS] = {false};
    const int methods = o->search.methods ? beam_methods(&o->search, kind, &e) : 0;
    if (o->search.methods && !methods) usage_error("%s", e.text);
    for (int i = 0; i < methods; i++) uses[kind[i]] = true;
    const bool steps = uses[SEARCH_BEAM] || uses[SEARCH_DVTS] || uses[SEARCH_REBASE];
    const OptionUse use[] = {
        {&o->search.width, uses[SEARCH_BEAM] || uses[SEARCH_DVTS], "used only by beam and dvts"},
        {&o->search.iterations, steps, "used only by beam, dvts and rebase"},
        {&o->search.lookahead, steps, "used only by beam, dvts and rebase"},
        {&o->search.separator, methods > 0 || o->ablation, "used only with --search and --think-ablation"},
        {&o->search.filter, uses[SEARCH_BEAM] || uses[SEARCH_REBASE], "used only by beam and rebase"},
        {&o->search.sort, uses[SEARCH_BEAM], "used only by beam"},
        {&o->search.balance, uses[SEARCH_REBASE], "used only by rebase"}};
    options_refuse_unused(ev->options, use, sizeof use / sizeof *use);
    if (o->ablation && (methods || thinking_on(&o->think) || episodes_on(&o->episodes)))
        usage_error("--think-ablation: cannot be used with --search, --think-tokens, --tools or --tool-cmd");
    if (o->ablation && !o->search.separator) o->search.separator = "\n";
    if (o->ablation && (!*o->search.separator || !*o->think.end))
        usage_error("--think-ablation: --think-end and --step-separator must not be empty");
    if (!methods) return;
    if (!o->reward_model) usage_error("--search: needs a process reward model, --reward-model");
    if (!option_given(&o->samples)) o->samples = 4;
    if (!option_given(&o->s.temperature)) o->s.temperature = 0.8;
    if (!option_given(&o->aggregation)) o->aggregation = PRM_LAST;
    if (o->samples < 1) usage_error("--search: needs --num-samples, the number of solutions");
    if ((uses[SEARCH_BEAM] || uses[SEARCH_DVTS]) && o->samples % o->search.width)
        usage_error("--num-samples %lld: beam and dvts need a multiple of --beam-width %lld", (long long)o->samples,
                    (long long)o->search.width);
    if (o->s.repetition_penalty != 1) usage_error("--search: cannot be used with --repetition-penalty");
    if (thinking_on(&o->think) || episodes_on(&o->episodes))
        usage_error("--search: cannot be used with --think-tokens, --tools or --tool-cmd");
    if (o->reference) usage_error("--search: cannot be used with --reference");
}

/* Rejects options that a kind of data does not use: chat, prompts, or what only a reward model scores; none: tokens. */
static inline void check_unused(Evaluator *ev, bool chat, bool prompts, bool scored) {
    EvaluateOptions *o = ev->o;
    static const char only_loss[] = "used only for chat and token shards";
    static const char only_model[] = "used only with -c/--checkpoint";
    const char *only_prompts = o->audit             ? "not used with --audit-tests, which needs no model"
                               : prompts && o->rank ? "not used with --rank-options, which draws nothing"
                                                    : "used only for a prompt shard";
    const bool loss = !prompts && !scored, runs = !scored && !o->audit, draws = prompts && runs && !o->rank,
               drawn = draws && o->samples;
    const OptionUse use[] = {
        {&o->m.tokenizer, runs, only_model},
        {&o->m.chat_template, runs, only_model},
        {&o->m.adapter, runs, only_model},
        {&o->m.quantize, runs, only_model},
        {&o->m.device, !o->audit, only_prompts},
        {&o->m.dtype, !o->audit, only_prompts},
        {&o->completion_only, chat, "used only for a chat shard"},
        {&o->max_length, loss, only_loss},
        {&o->micro_tokens, loss || o->reward_model || o->reference || o->rank,
         "used only for a loss, a reward model, --rank-options and --reference"},
        {&o->reference, !scored && (!prompts || drawn), "used only for a loss, or for samples of a prompt shard"},
        {&o->rank, prompts && runs, o->audit ? only_prompts : "used only for a prompt shard"},
        {&o->delimiter, o->rank != 0, "used only with --rank-options"},
        {&o->reward_model, !prompts || draws, only_prompts},
        {&o->tokens, o->reference != NULL, "used only with --reference"},
        {&o->s.max_new, draws, only_prompts},
        {&o->s.stop, draws, only_prompts},
        {&o->s.slots, draws, only_prompts},
        {&o->s.repetition_penalty, draws, only_prompts},
        {&o->samples, draws, only_prompts},
        {&o->episodes.tools, draws, only_prompts},
        {&o->episodes.commands, draws, only_prompts},
        {&o->think.tokens, draws, only_prompts},
        {&o->ablation, draws, only_prompts},
        {&o->search.methods, draws, only_prompts},
        {&o->weight, drawn && (o->weight != VOTES_REWARD || o->reward_model),
         "used only for the samples of a prompt shard; reward needs --reward-model"},
        {&o->reward, draws, only_prompts},
        {&o->reward_cmd, draws, only_prompts},
        {&o->reward_timeout, o->reward_cmd != NULL, "used only with --reward-cmd"},
        {&o->reward_sandbox, o->reward_cmd != NULL, "used only with --reward-cmd"},
        {&o->reward_workers, o->reward_cmd != NULL, "used only with --reward-cmd"},
        {&o->reward_group, o->reward_cmd != NULL, "used only with --reward-cmd"},
        {&o->scope, episodes_on(&o->episodes), "used only with --tools or --tool-cmd"},
        {&o->aggregation, o->reward_model != NULL, "used only with --reward-model"},
        {&o->compute, draws, only_prompts},
        {&o->report, o->compute || o->reference, "used only with --compute-curve or --reference"},
        {&o->completions, (prompts && runs) || (scored && judge_given(&o->judge)),
         "used only for a prompt shard, and for pairs with --judge"},
        CODE_USES(o->code, draws || o->audit, false, false, only_prompts),
        {&o->s.temperature, drawn, "used only for the samples of a prompt shard, --num-samples above 0"},
    };
    options_refuse_unused(ev->options, use, sizeof use / sizeof *use);
    episodes_refuse_unused(&o->episodes, ev->options);
    thinking_refuse_unused(&o->think, ev->options, o->ablation);
    check_search_options(ev);
    if (thinking_on(&o->think) && episodes_on(&o->episodes))
        usage_error("--think-tokens and --tools, --tool-cmd: give only one of them");
    if (thinking_on(&o->think) && o->reference) usage_error("--think-tokens: cannot be used with --reference");
    sampling_refuse_unused(&o->s, ev->options, drawn,
                           "used only for the samples of a prompt shard, --num-samples above 0");
}

/* Checks the options against the kind of the data. scored: data that only a reward model can score. */
static inline void check_kind(Evaluator *ev, const Shard *s, const char *kind, bool scored) {
    EvaluateOptions *o = ev->o;
    const bool pairs = scored && judge_given(&o->judge);
    if (pairs && s->kind != RECORD_PREFERENCE)
        usage_error("--judge: labels the pairs of a preference shard, not of kind %s", kind);
    if (pairs && o->reward_model)
        usage_error("--judge and --reward-model: give only one of them for a preference shard");
    if (pairs && ev->inputs.count > 1) usage_error("--judge: labels one preference shard; give -i once");
    if (scored && !o->reward_model && !pairs)
        die("%s: a shard of kind %s, expected chat or prompt; a reward model (--reward-model) can score it", s->name,
            kind);
    if (scored && o->m.checkpoint)
        usage_error("-c/--checkpoint: a shard of kind %s is scored by --reward-model only; leave -c out", kind);
    if (o->audit && s->kind != RECORD_PROMPT) usage_error("--audit-tests: reads a prompt shard, not %s", kind);
    if (!scored && !o->m.checkpoint && !o->audit)
        usage_error("-c/--checkpoint is required for a shard of kind %s", kind);
    if (scored || s->kind != RECORD_PROMPT || o->audit || o->rank)
        judge_refuse_unused(&o->judge, ev->options, pairs ? JUDGE_OF_PAIRS : 0,
                            "used only for a preference shard, and for prompts with --reward judge=...");
    check_unused(ev, !scored && s->kind == RECORD_CHAT, !scored && s->kind == RECORD_PROMPT, scored);
    if (o->reward_model && !scored && s->kind != RECORD_PROMPT)
        usage_error("--reward-model: scores preference, unpaired, step and prompt shards, not %s", kind);
}

#endif
