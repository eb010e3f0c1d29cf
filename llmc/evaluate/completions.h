/* completions.h - draws the completions of prompts, judges them and takes each: into a file, a comparison, counts.
 *
 *     tasks_run(&t, &engine, &sampling, outcome, count, clock_seconds());
 */
#ifndef LLMC_EVALUATE_COMPLETIONS_H
#define LLMC_EVALUATE_COMPLETIONS_H

#include "../base/error.h"           /* Error, xmalloc */
#include "../base/program.h"         /* program_stopping */
#include "../base/text.h"            /* TextBuffer, text_free */
#include "../model/pack.h"           /* batch_segment, batch_target */
#include "../rollout/ablation.h"     /* ablation_add */
#include "../rollout/episode_rows.h" /* episode_row_role */
#include "../rollout/episodes.h"     /* episodes_on, episode_row */
#include "../rollout/evaluation.h"   /* EvaluationSample, Outcome, evaluate_tasks, evaluation_summarise */
#include "../rollout/inference.h"    /* inference_completion_text, json_line */
#include "../rollout/prompts.h"      /* prompts_length, prompts_tokens */
#include "../rollout/role_rewards.h" /* role_rewards_add */
#include "../rollout/rollout.h"      /* Completion, Rollout, Sampling, completion_mask */
#include "../rollout/thinking.h"     /* THINKING_INFINITE, thinking_row */
#include "../rollout/trajectory.h"   /* Trajectory */
#include "compute_curve.h"           /* curve_count */
#include "evaluator.h"               /* EvaluateOptions, evaluator_count, evaluator_number, evaluator_progress */
#include "loss_batch.h"              /* loss_end_unit, loss_make_room */
#include "loss_work.h"               /* LossWork */
#include "prompt_rows.h"             /* prompt_row */
#include "tasks.h"                   /* Tasks, tasks_fail */

/* Writes a completion to the file of --completions. */
static inline void completion_write(Tasks *t, const EvaluationSample *s) {
    const Completion *c = s->completion;
    json_t *row = prompt_row(t->ev, &t->prompts, s->prompt), *tokens = json_array();
    double logprob = 0;
    for (int32_t i = 0; i < c->count; i++) {
        logprob += c->logp[i];
        json_array_append_new(tokens, json_integer(c->tokens[i]));
    }
    json_object_set_new(row, "sample", s->sample < 0 ? json_string("greedy") : json_integer(s->sample));
    json_object_set_new(row, "completion", inference_completion_text(&t->ev->model, t->how, c));
    json_object_set_new(row, "right", isnan(s->right) ? json_null() : json_boolean(s->right > 0.5));
    if (t->rewarded) evaluator_number(row, "reward", s->reward);
    json_object_set_new(row, "tokens", tokens);
    json_object_set_new(row, "finished", json_boolean(c->finished));
    json_object_set_new(row, "logprob", json_real(logprob));
    if (t->search) json_object_set_new(row, "search", json_string(t->search));
    if (t->budget && t->budget < THINKING_INFINITE) evaluator_count(row, "think_budget", t->budget);
    if (t->budget) thinking_row(row, c);
    else episode_row(row, c);
    if (!t->failed) t->failed = !json_line(&t->out, row, &t->error);
    json_decref(row);
}

/* Adds a sampled completion to the comparison with the reference. */
static inline void completion_compare(Tasks *t, const EvaluationSample *s) {
    const Completion *c = s->completion;
    LossWork *w = t->work;
    const int32_t *prompt = prompts_tokens(&t->prompts, s->prompt), n = prompts_length(&t->prompts, s->prompt);
    if (s->sample < 0 || !c->count) return;
    int32_t *ids = (int32_t *)xmalloc((size_t)(n + c->count) * sizeof *ids);
    memcpy(ids, prompt, (size_t)n * sizeof *ids);
    memcpy(ids + n, c->tokens, (size_t)c->count * sizeof *ids);
    loss_make_room(w, t->loss, n + c->count, c->count);
    const int32_t before = w->batch.targets, row = w->batch.rows;
    const uint8_t *drawn = completion_mask(c); /* tokens that the model did not draw are context */
    batch_segment(&w->batch, ids, n + c->count - 1, 0, -1);
    for (int32_t k = 0; k < c->count; k++)
        if (!drawn || drawn[k]) batch_target(&w->batch, row + n - 1 + k, c->tokens[k]);
    loss_end_unit(w, t->loss, before);
    free(ids);
}

/* Counts the tokens of a thought: of the samples, or of the greedy completions if there are no samples. */
static inline void completion_count_thought(Tasks *t, const EvaluationSample *s) {
    if (!t->budget || (s->sample < 0 && t->ev->o->samples)) return;
    const int32_t thought = s->completion->trajectory->thought;
    t->thoughts++;
    t->thought_tokens += thought;
    t->within += thought <= t->budget;
}

/* Counts the turns, calls and role of a completion: of the samples, or of the greedy completions if there are no samples. */
static inline void completion_count_turns(Tasks *t, const EvaluationSample *s) {
    EvaluateOptions *o = t->ev->o;
    const Trajectory *y = s->completion->trajectory;
    if (!y || !episodes_on(&o->episodes) || (s->sample < 0 && o->samples)) return;
    t->turns.completions++;
    t->turns.turns += y->turns;
    t->turns.calls += y->counts.calls;
    t->turns.failed += y->counts.failed_calls;
    t->turns.stop[y->stop]++;
    if (!*y->role) return;
    TextBuffer name = {0};
    episode_row_role(&t->episodes->tools, &t->episodes->programs, &t->prompts.what[s->prompt], y->role, &name);
    role_rewards_add(&t->turns.roles, name.text, s->reward);
    text_free(&name);
}

/* Takes a completion: writes it to the file of --completions, compares it with the reference. */
static inline void completion_take(void *context, const EvaluationSample *s) {
    Tasks *t = (Tasks *)context;
    EvaluateOptions *o = t->ev->o;
    const int32_t *prompt = prompts_tokens(&t->prompts, s->prompt);
    completion_count_thought(t, s);
    if (t->ablation && !t->failed && (s->sample >= 0 || !o->samples))
        t->failed = !ablation_add(t->ablation, prompt, prompts_length(&t->prompts, s->prompt), s->completion->tokens,
                                  s->completion->count, &t->error);
    if (o->compute && !t->search) curve_count(&t->curve, s, prompts_length(&t->prompts, s->prompt));
    completion_count_turns(t, s);
    if (o->completions) completion_write(t, s);
    if (t->work) completion_compare(t, s);
}

/* Draws and judges the completions of `count` prompts. outcome: (count). */
static inline void tasks_run(Tasks *t, Rollout *engine, const Sampling *how, Outcome *outcome, int64_t count,
                             double start) {
    EvaluateOptions *o = t->ev->o;
    Error e;
    const int64_t chunk = 4 * o->s.slots / (o->samples > 1 ? o->samples : 1) + 1;
    int64_t done = 0;
    while (done < count && !program_stopping()) {
        const int64_t n = count - done < chunk ? count - done : chunk;
        t->all.outcome = outcome + done;
        if (!evaluate_tasks(
                &t->all, engine, how, &t->prompts, done, n, &t->ev->model.text, t->rewarded ? &t->rewards : NULL,
                o->completions || o->compute || o->ablation || t->work || t->budget || episodes_on(&o->episodes)
                    ? completion_take
                    : NULL,
                t, &e))
            tasks_fail(t, e.text);
        if (t->failed) tasks_fail(t, t->error.text);
        done += n;
        evaluator_progress(done, count, "prompts", start);
    }
    if (done < count) tasks_fail(t, "stopped by a signal");
    t->all.outcome = outcome;
    evaluation_summarise(&t->all, outcome, count);
}

#endif
