/* answer_set.h - prompts with one or two completions and their per-token values.
 *
 * A set is the data of one optimizer step or one evaluation on held-out data: families of a prompt, a chosen and a
 * rejected completion (pairs.h), or of a prompt and one completion (`rejected` empty). The per-token arrays are flat
 * and in the order of the targets of a micro-batch, so a micro-batch is a contiguous range of each array:
 *
 *     offset   3i        3i+1       3i+2         3i+3
 *              | prompt i | chosen i | rejected i | prompt i+1 ...
 *
 * Prompt tokens are included only if a loss trains on them (`prompts`: ORPO), without the first, which is not
 * predicted.
 *
 *     AnswerSet s = {.shared = true};
 *     answer_set_clear(&s);
 *     answer_set_add(&s, pair, record);                     // for each pair of the step
 *     for (int32_t i = 0, next; i < s.count; i = next) {
 *         next = answer_set_pack(&s, &batch, i);
 *         model_forward(&model, &work, &batch, 1.0f, &(ModelOutput){.logp = s.logp + s.offset[3 * i]});
 *     }
 */
#ifndef LLMC_RECORDS_ANSWER_SET_H
#define LLMC_RECORDS_ANSWER_SET_H

#include "../model/model.h"
#include "pairs.h"

typedef struct AnswerSet {
    bool shared;  /* both completions of a pair share one copy of their prompt */
    bool prompts; /* prompt tokens are targets too */
    int32_t count, capacity, token_capacity;
    Pair *pair;      /* (count) */
    int64_t *record; /* (count) index in the shard */
    int32_t *offset; /* (3 count + 1) */
    /* (tokens) */
    float *logp, *ref, *square, *entropy, *dlogp;
    int32_t *argmax;
} AnswerSet;

static inline void answer_set_free(AnswerSet *s) {
    free(s->pair), free(s->record), free(s->offset);
    free(s->logp), free(s->ref), free(s->square), free(s->entropy), free(s->dlogp), free(s->argmax);
    *s = (AnswerSet){0};
}

static inline void answer_set_clear(AnswerSet *s) { s->count = 0; }

static inline int32_t answer_set_tokens(const AnswerSet *s) { return s->count ? s->offset[3 * s->count] : 0; }

/* Returns the maximum number of rows that a pair takes in a batch. */
static inline int32_t answer_set_rows(const AnswerSet *s, const Pair *p) {
    return (s->shared || !p->rejected_len ? 1 : 2) * p->prompt_len + p->chosen_len + p->rejected_len;
}

/* Adds a pair, without copying its tokens. The values already in the arrays are kept. */
static inline void answer_set_add(AnswerSet *s, const Pair *p, int64_t record) {
    if (s->count == s->capacity) {
        s->capacity = 2 * s->capacity + 16;
        const size_t n = (size_t)s->capacity;
        s->pair = (Pair *)xrealloc(s->pair, n, sizeof *s->pair);
        s->record = (int64_t *)xrealloc(s->record, n, sizeof *s->record);
        s->offset = (int32_t *)xrealloc(s->offset, 3 * n + 1, sizeof *s->offset);
    }
    if (!s->count) s->offset[0] = 0;
    int32_t *at = s->offset + 3 * s->count;
    s->pair[s->count] = *p;
    s->record[s->count++] = record;
    at[1] = at[0] + (s->prompts ? p->prompt_len - 1 : 0);
    at[2] = at[1] + p->chosen_len;
    at[3] = at[2] + p->rejected_len;
    if (at[3] <= s->token_capacity) return;
    s->token_capacity = 2 * at[3];
    const size_t n = (size_t)s->token_capacity;
    float **arrays[] = {&s->logp, &s->ref, &s->square, &s->entropy, &s->dlogp};
    for (int i = 0; i < 5; i++) *arrays[i] = (float *)xrealloc(*arrays[i], n, sizeof(float));
    s->argmax = (int32_t *)xrealloc(s->argmax, n, sizeof *s->argmax);
}

/* Packs as many families as fit into the batch, starting at `first`. Returns the index after the last one packed. */
static inline int32_t answer_set_pack(const AnswerSet *s, Batch *b, int32_t first) {
    batch_clear(b);
    for (int32_t i = first; i < s->count; i++) {
        const Pair *p = &s->pair[i];
        const int32_t rows = answer_set_rows(s, p);
        if (!batch_fits(b, rows, rows, 4)) return i;
        const int prompt = batch_segment(b, p->prompt, p->prompt_len, 0, -1);
        if (s->prompts)
            for (int32_t k = 1; k < p->prompt_len; k++) batch_target(b, b->segment[prompt].start + k - 1, p->prompt[k]);
        batch_completion(b, prompt, p->chosen, p->chosen_len);
        if (!p->rejected_len) continue;
        const int again = s->shared ? prompt : batch_segment(b, p->prompt, p->prompt_len, 0, -1);
        batch_completion(b, again, p->rejected, p->rejected_len);
    }
    return s->count;
}

/* Returns the number of micro-batches of the set. */
static inline int32_t answer_set_micros(const AnswerSet *s, Batch *b) {
    int32_t micros = 0;
    for (int32_t i = 0; i < s->count; micros++) i = answer_set_pack(s, b, i);
    return micros;
}

#endif
