/* completion_set.h - prompts with one to three completions and their per-token values.
 *
 * A set holds the data of one optimizer step or of one evaluation on held-out data: families (batch.h) of a prompt with
 * a chosen and a rejected completion and perhaps a gold answer (pairs.h), or of a prompt with one completion (`rejected`
 * is empty). The per-token arrays are flat and in the order of the targets of a micro-batch, so a micro-batch is a
 * contiguous range of each array. Code that works on a micro-batch receives only that range, as a CompletionSlice whose
 * offsets begin at 0:
 *
 *     offset   4i         4i+1       4i+2         4i+3     4i+4
 *              | prompt i | chosen i | rejected i | gold i | prompt i+1 ...
 *
 * Tokens of a completion that its mask leaves out (tokens that the model observed) are context in the batch and have no place
 * in the arrays. Prompt tokens are included only if a loss trains on them (`prompts`, for ORPO). The first one is always left out,
 * because it is not predicted.
 *
 *     CompletionSet s = {.shared = true};                  // model/transformer.h
 *     completion_set_clear(&s);
 *     completion_set_add(&s, pair, record);                     // for each pair of the step
 *     const MicroPlan *plan = completion_set_plan(&s, &batch);
 *     for (int32_t m = 0; m < plan->micros; m++) {
 *         const CompletionSlice x = completion_set_pack(&s, &batch, plan->first[m], plan->first[m + 1]);
 *         model_forward(&model, &work, &batch, 1.0f, &(ModelOutput){.logp = x.logp});
 *     }
 */
#ifndef LLMC_RECORDS_COMPLETION_SET_H
#define LLMC_RECORDS_COMPLETION_SET_H

#include "../base/error.h"       /* xrealloc */
#include "../model/batch.h"      /* Batch */
#include "../model/micro_plan.h" /* MicroPlan, BatchSize, micro_plan_add, micro_plan_begin, ... */
#include "../model/pack.h"       /* batch_completion, batch_segment, batch_clear, batch_target */
#include "pairs.h"               /* Pair, pair_rows */

typedef struct CompletionSet {
    bool shared;  /* both completions of a pair share one copy of their prompt */
    bool prompts; /* prompt tokens are targets too */
    int32_t count, capacity, token_capacity;
    Pair *pair;      /* (count) */
    int64_t *record; /* (count) index in the shard */
    int32_t *offset; /* (4 count + 1) */
    /* (tokens) */
    float *logp, *ref, *square, *entropy, *dlogp;
    int32_t *argmax;
    MicroPlan plan;        /* the result of completion_set_plan() */
    int32_t *slice_offset; /* (4 count + 1) offsets of the last slice */
} CompletionSet;

/* Families first ... first+count-1 of a set. */
typedef struct CompletionSlice {
    int32_t first, count;
    const int32_t *offset; /* (4 count + 1) as in the set, but from 0; valid until the next slice is made */
    float *logp, *ref, *square, *entropy, *dlogp; /* (tokens of the slice) */
    int32_t *argmax;
} CompletionSlice;

static inline void completion_set_free(CompletionSet *s) {
    free(s->pair), free(s->record), free(s->offset), free(s->slice_offset);
    micro_plan_free(&s->plan);
    free(s->logp), free(s->ref), free(s->square), free(s->entropy), free(s->dlogp), free(s->argmax);
    *s = (CompletionSet){0};
}

static inline void completion_set_clear(CompletionSet *s) { s->count = 0; }

static inline int32_t completion_set_tokens(const CompletionSet *s) { return s->count ? s->offset[4 * s->count] : 0; }

/* Returns the maximum number of rows that a pair takes in a batch. */
static inline int32_t completion_set_rows(const CompletionSet *s, const Pair *p) {
    return (int32_t)pair_rows(p, s->shared);
}

/* Returns the number of targets of family i. */
static inline int32_t completion_set_targets(const CompletionSet *s, int32_t i) {
    return s->offset[4 * i + 4] - s->offset[4 * i];
}

/* The number of targets of a completion of n tokens with this mask (Pair). */
static inline int32_t completion_targets(const uint8_t *mask, int32_t n) {
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) count += !mask || mask[i];
    return count;
}

/* Adds a pair, without copying its tokens. The values already in the arrays are kept. */
static inline void completion_set_add(CompletionSet *s, const Pair *p, int64_t record) {
    if (s->count == s->capacity) {
        s->capacity = 2 * s->capacity + 16;
        const size_t n = (size_t)s->capacity;
        s->pair = (Pair *)xrealloc(s->pair, n, sizeof *s->pair);
        s->record = (int64_t *)xrealloc(s->record, n, sizeof *s->record);
        s->offset = (int32_t *)xrealloc(s->offset, 4 * n + 1, sizeof *s->offset);
        s->slice_offset = (int32_t *)xrealloc(s->slice_offset, 4 * n + 1, sizeof *s->slice_offset);
    }
    if (!s->count) s->offset[0] = 0;
    int32_t *at = s->offset + 4 * s->count;
    s->pair[s->count] = *p;
    s->record[s->count++] = record;
    at[1] = at[0] + (s->prompts ? p->prompt_len - 1 : 0);
    at[2] = at[1] + completion_targets(p->chosen_mask, p->chosen_len);
    at[3] = at[2] + completion_targets(p->rejected_mask, p->rejected_len);
    at[4] = at[3] + p->gold_len;
    if (at[4] <= s->token_capacity) return;
    s->token_capacity = 2 * at[4];
    const size_t n = (size_t)s->token_capacity;
    float **arrays[] = {&s->logp, &s->ref, &s->square, &s->entropy, &s->dlogp};
    for (int i = 0; i < 5; i++) *arrays[i] = (float *)xrealloc(*arrays[i], n, sizeof(float));
    s->argmax = (int32_t *)xrealloc(s->argmax, n, sizeof *s->argmax);
}

/* Divides the set into micro-batches of b's capacity. */
static inline const MicroPlan *completion_set_plan(CompletionSet *s, const Batch *b) {
    micro_plan_begin(&s->plan, b, 0);
    for (int32_t i = 0; i < s->count; i++) {
        const Pair *p = &s->pair[i];
        const int32_t completions =
            1 + (p->rejected_len > 0) + (p->gold_len > 0); /* the last token of each needs no row */
        const int32_t segments = 2 * (completions > 2 ? completions : 2);
        micro_plan_add(&s->plan,
                       (BatchSize){completion_set_rows(s, p) - completions, completion_set_targets(s, i), segments});
    }
    return &s->plan;
}

static inline CompletionSlice completion_set_slice(CompletionSet *s, int32_t first, int32_t end) {
    const int32_t base = s->count ? s->offset[4 * first] : 0;
    for (int32_t i = 4 * first; i <= 4 * end && s->count; i++) s->slice_offset[i - 4 * first] = s->offset[i] - base;
    return (CompletionSlice){.first = first,
                             .count = end - first,
                             .offset = s->slice_offset,
                             .logp = s->logp + base,
                             .ref = s->ref + base,
                             .square = s->square + base,
                             .entropy = s->entropy + base,
                             .dlogp = s->dlogp + base,
                             .argmax = s->argmax + base};
}

/* The prompt's segment for another completion of a pair: the first one, or a copy. */
static inline int completion_set_prompt(const CompletionSet *s, Batch *b, const Pair *p, int first) {
    return s->shared ? first : batch_segment(b, p->prompt, p->prompt_len, 0, -1);
}

/* Packs families first ... end-1 into the batch and returns their slice. */
static inline CompletionSlice completion_set_pack(CompletionSet *s, Batch *b, int32_t first, int32_t end) {
    batch_clear(b);
    for (int32_t i = first; i < end; i++) {
        const Pair *p = &s->pair[i];
        const int prompt = batch_segment(b, p->prompt, p->prompt_len, 0, -1);
        if (s->prompts)
            for (int32_t k = 1; k < p->prompt_len; k++) batch_target(b, b->segment[prompt].start + k - 1, p->prompt[k]);
        batch_completion(b, prompt, p->chosen, p->chosen_mask, p->chosen_len);
        if (p->rejected_len)
            batch_completion(b, completion_set_prompt(s, b, p, prompt), p->rejected, p->rejected_mask, p->rejected_len);
        if (p->gold_len) batch_completion(b, completion_set_prompt(s, b, p, prompt), p->gold, NULL, p->gold_len);
    }
    return completion_set_slice(s, first, end);
}

#endif
