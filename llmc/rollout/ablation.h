/* ablation.h - how much the answer of a completion depends on each step of its thought.
 *
 * A completion is a thought, the end of thinking and an answer; the thought is a sequence of steps. With L(thought) the sum of
 * the log-probabilities of the answer's tokens after the prompt, a thought and the end of thinking:
 *
 *   D_all   L(all steps) - L(no step)
 *   D_i     L(all steps) - L(without step i)
 *   S_i     L(all steps) - L(step i replaced by a step of another completion)
 *
 * A step is needed if D_i > 0.7 D_all: without it the answer loses most of what it gains from the thought. The share of such
 * steps is over completions with D_all > 0. (A measure in the spirit of tests of faithful reasoning by deleting and
 * replacing steps, such as Lanham et al. 2023, 2307.13702; the threshold is ours.)
 *
 * The answer stays the one that was drawn, so this needs forward passes only.
 *
 *     Ablation x;
 *     if (!ablation_open(&x, &model, &model_text, "</think>", "\n", longest, &e)) die("%s", e.text);
 *     if (!ablation_add(&x, prompt, prompt_len, completion, completion_len, &e)) die("%s", e.text);    // each completion
 *     printf("%g of the steps are needed\n", x.needed / x.weighed);
 *     ablation_close(&x);
 */
#ifndef LLMC_ROLLOUT_ABLATION_H
#define LLMC_ROLLOUT_ABLATION_H

#include "../base/error.h"        /* Error, xcalloc, xrealloc */
#include "../base/text.h"         /* TokenList, token_list_free, token_list_append, token_list_extend */
#include "../model/batch.h"       /* Batch */
#include "../model/model.h"       /* Model, model_sync */
#include "../model/model_text.h"  /* ModelText */
#include "../model/pack.h"        /* batch_clear, batch_fits, batch_free, batch_new, ... */
#include "../model/transformer.h" /* ModelOutput, model_forward */
#include "../model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "../text/tokenizer.h"    /* tokenizer_special */
#include "stop_text.h"            /* stop_text_cut, StopTexts */
#include "thinking.h"             /* thinking_tokens */

#define ABLATION_NEEDED 0.7

typedef struct Ablation {
    const Model *model;
    StopTexts end, separator;
    int32_t end_token; /* instead of the text `end`; -1: none */
    Workspace work;
    Batch batch;
    float *logp; /* (targets) */
    int *owner;  /* (targets) the variant of each */
    double *sum; /* (variants) L of each */
    int variants, room;
    int32_t *ids;        /* (longest) */
    TokenList last;      /* the steps of the last completion, */
    TokenList last_ends; /* and their ends among these tokens */
    /* sums */
    double completions, without;        /* with an end of thinking and an answer; without */
    double steps, weighed, needed;      /* all; of completions with D_all > 0; needed ones */
    double full, all, removed, swapped; /* L(all steps), D_all over completions; D_i, S_i over steps */
    double swaps;                       /* steps that were replaced */
} Ablation;

static inline void ablation_close(Ablation *x) {
    if (!x->model) return;
    workspace_free(&x->work, x->model);
    batch_free(&x->batch);
    free(x->logp), free(x->owner), free(x->sum), free(x->ids);
    token_list_free(&x->last), token_list_free(&x->last_ends);
    *x = (Ablation){0};
}

/* longest: tokens of a prompt with its completion. text, end, separator: must outlive x. */
static inline bool ablation_open(Ablation *x, const Model *m, const ModelText *text, const char *end,
                                 const char *separator, int32_t longest, Error *e) {
    const int32_t rows = 2 * longest > 4096 ? 2 * longest : 4096;
    *x = (Ablation){.model = m,
                    .end = {.tokenizer = &text->tokenizer, .text = {end}, .count = 1},
                    .separator = {.tokenizer = &text->tokenizer, .text = {separator}, .count = 1},
                    .end_token = tokenizer_special(&text->tokenizer, end)};
    x->batch = batch_new(rows, rows, rows);
    x->logp = (float *)xcalloc((size_t)rows, sizeof *x->logp);
    x->owner = (int *)xcalloc((size_t)rows, sizeof *x->owner);
    x->ids = (int32_t *)xcalloc((size_t)longest * 2 + 1, sizeof *x->ids);
    if (workspace_new(&x->work, m, rows, rows, rows, false, 0, e)) return true;
    ablation_close(x);
    return false;
}

/* Runs the batch and adds its log-probabilities to the variants. */
static inline bool ablation_run(Ablation *x, Error *e) {
    if (!x->batch.targets) return true;
    model_forward(x->model, &x->work, &x->batch, 1, &(ModelOutput){.logp = x->logp});
    if (!model_sync(x->model, e)) return false;
    for (int32_t r = 0; r < x->batch.targets; r++) x->sum[x->owner[r]] += x->logp[r];
    batch_clear(&x->batch);
    return true;
}

/* Adds a variant: the first `head` tokens of x->ids are the prompt and the thought; `tail` tokens follow, the last `answer` of
 * which are the answer. NaN if it does not fit the context, or is more than twice as long as any completion. */
static inline bool ablation_variant(Ablation *x, int32_t head, const int32_t *tail, int32_t count, int32_t answer,
                                    Error *e) {
    const int32_t n = head + count;
    if (x->variants == x->room) {
        x->room = 2 * x->room + 64;
        x->sum = (double *)xrealloc(x->sum, (size_t)x->room, sizeof *x->sum);
    }
    const bool fits = n <= x->model->config.context && n <= x->batch.rows_max;
    x->sum[x->variants++] = fits ? 0 : NAN;
    if (!fits) return true;
    memcpy(x->ids + head, tail, (size_t)count * sizeof *x->ids);
    if (!batch_fits(&x->batch, n, answer, 1) && !ablation_run(x, e)) return false;
    const int32_t start = x->batch.rows;
    batch_segment(&x->batch, x->ids, n, 0, -1);
    for (int32_t i = n - answer; i < n; i++) {
        x->owner[x->batch.targets] = x->variants - 1;
        batch_target(&x->batch, start + i - 1, x->ids[i]);
    }
    return true;
}

/* The number of tokens up to the end of thinking, and of those that are it; 0: there is none. */
static inline int32_t ablation_end(const Ablation *x, const int32_t *tokens, int32_t n, int32_t *length) {
    for (int32_t i = 1; i <= n; i++) {
        const size_t bytes = x->end_token < 0 ? stop_text_cut(&x->end, tokens, i) : 0;
        *length = bytes ? thinking_tokens(x->end.tokenizer, tokens, i, bytes) : 1;
        if (bytes || (x->end_token >= 0 && tokens[i - 1] == x->end_token)) return i;
    }
    return 0;
}

/* Copies a thought without the tokens [from, to), and with `count` tokens of `step` in their place, after the n tokens of the
 * prompt in x->ids. Returns the length of both. */
static inline int32_t ablation_thought(Ablation *x, int32_t n, const int32_t *thought, int32_t length, int32_t from,
                                       int32_t to, const int32_t *step, int32_t count) {
    int32_t *at = x->ids + n;
    memcpy(at, thought, (size_t)from * sizeof *at);
    if (count) memcpy(at + from, step, (size_t)count * sizeof *at);
    memcpy(at + from + count, thought + to, (size_t)(length - to) * sizeof *at);
    return n + length - (to - from) + count;
}

/* Adds the figures of one completion. ends: (steps) ends of the steps; sum: L of all steps, of none, and for each step without
 * it and, if there is another completion, with another step in its place. */
static inline void ablation_figures(Ablation *x, int32_t steps, bool swapped) {
    const double full = x->sum[0], all = full - x->sum[1];
    x->completions++;
    x->full += full;
    x->all += all;
    for (int32_t i = 0; i < steps; i++) {
        const double removed = full - x->sum[2 + i * (1 + swapped)];
        x->steps++;
        x->removed += removed;
        if (all > 0) {
            x->weighed++;
            x->needed += removed > ABLATION_NEEDED * all;
        }
        if (!swapped || isnan(x->sum[3 + 2 * i])) continue;
        x->swaps++;
        x->swapped += full - x->sum[3 + 2 * i];
    }
}

/* Adds a completion of a prompt of n tokens. */
static inline bool ablation_add(Ablation *x, const int32_t *prompt, int32_t n, const int32_t *tokens, int32_t count,
                                Error *e) {
    int32_t length = 0;
    const int32_t end = ablation_end(x, tokens, count, &length), thought = end - length, answer = count - end;
    TokenList ends = {0};
    if (!end || answer < 1 || n + count > x->model->config.context) {
        x->without++;
        return true;
    }
    for (int32_t i = 1, first = 0; i <= thought; i++)
        if (i == thought || stop_text_cut(&x->separator, tokens + first, i - first)) {
            token_list_append(&ends, i);
            first = i;
        }
    const bool swap = x->last_ends.count > 0;
    const int32_t *tail = tokens + thought, rest = count - thought;
    memcpy(x->ids, prompt, (size_t)n * sizeof *x->ids);
    x->variants = 0;
    bool ok = ablation_variant(x, ablation_thought(x, n, tokens, thought, 0, 0, NULL, 0), tail, rest, answer, e) &&
              ablation_variant(x, n, tail, rest, answer, e);
    for (int32_t i = 0; ok && i < ends.count; i++) {
        const int32_t from = i ? ends.ids[i - 1] : 0, to = ends.ids[i];
        ok = ablation_variant(x, ablation_thought(x, n, tokens, thought, from, to, NULL, 0), tail, rest, answer, e);
        if (!ok || !swap) continue;
        const int32_t k = i % x->last_ends.count, first = k ? x->last_ends.ids[k - 1] : 0,
                      size = x->last_ends.ids[k] - first;
        const int32_t head = ablation_thought(x, n, tokens, thought, from, to, x->last.ids + first, size);
        ok = ablation_variant(x, head, tail, rest, answer, e);
    }
    ok = ok && ablation_run(x, e);
    if (ok) ablation_figures(x, ends.count, swap);
    x->last.count = 0;
    token_list_extend(&x->last, tokens, thought);
    token_list_free(&x->last_ends);
    x->last_ends = ends;
    return ok;
}

#endif
