/* step_rollouts.h - labels of steps without a human: a step is as good as the completions that continue from it.
 *
 * For each prefix of a solution that ends with a step, N continuations are drawn and checked. The share of right ones is the
 * value of the step (soft label); it is good if any of them is right (hard label) (Math-Shepherd: Wang et al. 2024,
 * 2312.08935, section 3.3). The whole solution is checked itself. With a binary search the first step from which no
 * continuation is right is found in log2(steps) rounds (OmegaPRM: Luo et al. 2024, 2406.06592, section 3.2); the
 * steps before it are good, and those from it on are bad.
 *
 * A prefix is prefilled once for all its continuations, and equal prefixes of several solutions are continued once. The draws
 * depend on the seed and on the prefix alone.
 *
 *     Scoring scoring;
 *     StepSolution s[2] = {{0}};             // prompts, tokens and ends of their steps
 *     StepRollouts x = {.engine = &engine, .sampling = &sampling, .text = &model_text, .scoring = &scoring, .samples = 8};
 *     if (!step_rollouts(&x, s, 2, false, &e)) die("%s", e.text);                 // fills in s[i].value and s[i].error
 */
#ifndef LLMC_ROLLOUT_STEP_ROLLOUTS_H
#define LLMC_ROLLOUT_STEP_ROLLOUTS_H

#define XXH_INLINE_ALL

#include "../base/error.h"       /* xcalloc, Error, xmalloc */
#include "../model/model_text.h" /* ModelText */
#include "prompts.h"             /* PromptText */
#include "rollout.h"             /* Completion, RolloutRequest, completion_free, Rollout, ... */
#include "scoring.h"             /* Score, Scoring, scoring_run */
#include <xxhash.h>

/* A solution. The caller fills in the first part and frees value. */
typedef struct StepSolution {
    const int32_t *tokens; /* the prompt and the steps */
    int32_t prompt_len;
    const int32_t *end; /* (steps) tokens of the prompt and the steps up to this one */
    int steps;          /* at least 1 */
    const PromptText *what;
    double *value; /* (steps) share of right continuations; NaN: unknown */
    int error;     /* the first bad step, `steps` if there is none; -1: nothing could be checked */
    int low;       /* of the binary search: the first `low` steps are good, */
    int high;      /* and step `high` is bad or does not exist */
} StepSolution;

typedef struct StepRollouts {
    Rollout *engine;
    const Sampling *sampling;
    const ModelText *text;
    Scoring *scoring;
    int samples;
    int64_t prefixes, shared; /* prefixes that were asked for; of them, equal to another one */
} StepRollouts;

/* Step `step` of solution s: its prefix is continued. */
typedef struct StepQuery {
    StepSolution *s;
    int step;
    uint64_t hash;
    int same; /* an earlier query with the same prefix; -1: none */
} StepQuery;

/* The share of right completions of a request, each of which follows the first `skip` tokens after the prompt. NaN if one of
 * them could not be checked. */
static inline bool step_share_right(StepRollouts *x, const StepSolution *s, int32_t skip, const Completion *out, int n,
                                    double *share, Error *e) {
    Completion *whole = (Completion *)xcalloc((size_t)n, sizeof *whole);
    Score *score = (Score *)xcalloc((size_t)n, sizeof *score);
    const RolloutRequest q = {
        .prompt = s->tokens, .prompt_len = s->prompt_len, .samples = n, .out = whole, .record = s->what};
    for (int k = 0; k < n; k++) {
        const size_t count = (size_t)(skip + out[k].count);
        whole[k] = (Completion){.tokens = (int32_t *)xmalloc((count + 1) * sizeof(int32_t)),
                                .logp = (float *)xcalloc(count + 1, sizeof(float)),
                                .count = (int32_t)count,
                                .finished = out[k].finished};
        memcpy(whole[k].tokens, s->tokens + s->prompt_len, (size_t)skip * sizeof(int32_t));
        if (out[k].count) memcpy(whole[k].tokens + skip, out[k].tokens, (size_t)out[k].count * sizeof(int32_t));
    }
    const bool ok = scoring_run(x->scoring, x->text, x->sampling, s->what, &q, score, e);
    double right = 0;
    for (int k = 0; k < n; k++) {
        right += score[k].right;
        completion_free(&whole[k]);
    }
    *share = right / n;
    free(whole), free(score);
    return ok;
}

/* Continues the prefixes of the queries and sets their values. */
static inline bool step_continue(StepRollouts *x, StepQuery *query, int n, Error *e) {
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)n + 1, sizeof *q);
    Completion *out = (Completion *)xcalloc((size_t)n * (size_t)x->samples + 1, sizeof *out);
    int *of = (int *)xcalloc((size_t)n + 1, sizeof *of), requests = 0;
    for (int i = 0; i < n; i++) {
        const StepSolution *s = query[i].s;
        const int32_t length = s->end[query[i].step];
        query[i].hash = XXH3_64bits_withSeed(s->tokens, (size_t)length * sizeof(int32_t), (uint64_t)s->prompt_len);
        query[i].same = -1;
        for (int k = 0; k < i && query[i].same < 0; k++)
            if (query[k].hash == query[i].hash && query[k].same < 0) query[i].same = k;
        x->prefixes++;
        x->shared += query[i].same >= 0;
        if (query[i].same >= 0) continue;
        of[i] = requests;
        q[requests] = (RolloutRequest){.prompt = s->tokens,
                                       .prompt_len = length,
                                       .samples = x->samples,
                                       .id = query[i].hash >> 9,
                                       .out = out + requests * x->samples,
                                       .record = s->what};
        requests++;
    }
    bool ok = rollout_run(x->engine, x->sampling, q, requests, NULL, NULL, e);
    for (int i = 0; ok && i < n; i++) {
        const StepSolution *s = query[i].s;
        const StepQuery *same = query[i].same >= 0 ? &query[query[i].same] : &query[i];
        const int request = of[same - query];
        ok = step_share_right(x, s, s->end[query[i].step] - s->prompt_len, q[request].out, x->samples,
                              &s->value[query[i].step], e);
    }
    for (int i = 0; i < requests * x->samples; i++) completion_free(&out[i]);
    free(q), free(out), free(of);
    return ok;
}

/* Checks the whole solution: the value of its last step. */
static inline bool step_whole(StepRollouts *x, StepSolution *s, Error *e) {
    const Completion nothing = {.finished = true};
    const int last = s->steps - 1;
    return step_share_right(x, s, s->end[last] - s->prompt_len, &nothing, 1, &s->value[last], e);
}

/* Values of all steps but the last. */
static inline bool step_values(StepRollouts *x, StepSolution *s, int n, Error *e) {
    int count = 0;
    for (int i = 0; i < n; i++) count += s[i].error < 0 ? 0 : s[i].steps - 1;
    StepQuery *query = (StepQuery *)xcalloc((size_t)count + 1, sizeof *query);
    count = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; s[i].error >= 0 && k + 1 < s[i].steps; k++) query[count++] = (StepQuery){.s = &s[i], .step = k};
    const bool ok = step_continue(x, query, count, e);
    for (int i = 0; ok && i < n; i++)
        for (s[i].error = s[i].error < 0 ? -1 : 0; s[i].error >= 0 && s[i].error < s[i].steps; s[i].error++)
            if (!(s[i].value[s[i].error] > 0)) break;
    free(query);
    return ok;
}

/* The first bad step of each wrong solution, by a binary search. */
static inline bool step_search(StepRollouts *x, StepSolution *s, int n, Error *e) {
    StepQuery *query = (StepQuery *)xcalloc((size_t)n + 1, sizeof *query);
    bool ok = true;
    for (int i = 0; i < n; i++) {
        s[i].low = s[i].error < 0 ? s[i].steps : 0;
        s[i].high = s[i].error < 0 || s[i].value[s[i].steps - 1] > 0 ? s[i].steps : s[i].steps - 1;
        if (s[i].high == s[i].steps) s[i].low = s[i].steps; /* a right solution has no bad step */
    }
    for (int count = 1; ok && count;) {
        count = 0;
        for (int i = 0; i < n; i++)
            if (s[i].low < s[i].high)
                query[count++] = (StepQuery){.s = &s[i], .step = s[i].low + (s[i].high - s[i].low) / 2};
        ok = !count || step_continue(x, query, count, e);
        for (int i = 0; ok && i < count; i++) {
            StepSolution *t = query[i].s;
            if (t->value[query[i].step] > 0) t->low = query[i].step + 1;
            else t->high = query[i].step;
        }
    }
    for (int i = 0; i < n; i++) s[i].error = s[i].error < 0 ? -1 : s[i].high;
    free(query);
    return ok;
}

/* Labels the steps of n solutions. search: looks for the first bad step only; the values of the other steps stay NaN. */
static inline bool step_rollouts(StepRollouts *x, StepSolution *s, int n, bool search, Error *e) {
    for (int i = 0; i < n; i++) {
        s[i].value = (double *)xmalloc((size_t)s[i].steps * sizeof *s[i].value);
        for (int k = 0; k < s[i].steps; k++) s[i].value[k] = NAN;
        if (!step_whole(x, &s[i], e)) return false;
        s[i].error = isnan(s[i].value[s[i].steps - 1]) ? -1 : 0;
    }
    return search ? step_search(x, s, n, e) : step_values(x, s, n, e);
}

#endif
