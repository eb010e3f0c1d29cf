/* answer_set.h - prompts with one or two answers, and what is known of each of their tokens.
 *
 * A set is what one optimizer step, or one look at held-out data, works on: families of a prompt, a chosen and a rejected
 * answer (pairs.h), or a prompt with one answer (`rejected` empty). Tokens lie flat, in the order in which a micro-batch
 * has its targets, so a micro-batch is a stretch of every per-token array:
 *
 *     offset   3i        3i+1       3i+2         3i+3
 *              | prompt i | chosen i | rejected i | prompt i+1 ...
 *
 * The prompt's tokens are there only where a loss learns them (`prompts`: ORPO); its first token is predicted by nothing.
 *
 *     AnswerSet s = {.shared = true};
 *     answer_set_clear(&s), answer_set_add(&s, pair, record), ...;
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
    bool shared;  /* both answers of a pair hang on one copy of their prompt */
    bool prompts; /* the prompt's tokens are targets, too */
    int32_t count, capacity, token_capacity;
    Pair *pair;      /* (count) */
    int64_t *record; /* (count) which one of its shard */
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

/* Rows that a pair takes in a batch, at most. */
static inline int32_t answer_set_rows(const AnswerSet *s, const Pair *p) {
    return (s->shared || !p->rejected_len ? 1 : 2) * p->prompt_len + p->chosen_len + p->rejected_len;
}

/* Its tokens are not copied. What the arrays held is kept. */
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
    s->pair[s->count] = *p, s->record[s->count++] = record;
    at[1] = at[0] + (s->prompts ? p->prompt_len - 1 : 0);
    at[2] = at[1] + p->chosen_len, at[3] = at[2] + p->rejected_len;
    if (at[3] <= s->token_capacity) return;
    s->token_capacity = 2 * at[3];
    const size_t n = (size_t)s->token_capacity;
    float **arrays[] = {&s->logp, &s->ref, &s->square, &s->entropy, &s->dlogp};
    for (int i = 0; i < 5; i++) *arrays[i] = (float *)xrealloc(*arrays[i], n, sizeof(float));
    s->argmax = (int32_t *)xrealloc(s->argmax, n, sizeof *s->argmax);
}

/* Packs families from `first` on into the batch, as many as fit. Returns one past the last that went in. */
static inline int32_t answer_set_pack(const AnswerSet *s, Batch *b, int32_t first) {
    batch_clear(b);
    for (int32_t i = first; i < s->count; i++) {
        const Pair *p = &s->pair[i];
        const int32_t rows = answer_set_rows(s, p);
        if (!batch_fits(b, rows, rows, 4)) return i;
        const int prompt = batch_segment(b, p->prompt, p->prompt_len, 0, -1);
        for (int32_t k = 1; s->prompts && k < p->prompt_len; k++)
            batch_target(b, b->segment[prompt].start + k - 1, p->prompt[k]);
        batch_completion(b, prompt, p->chosen, p->chosen_len);
        if (!p->rejected_len) continue;
        const int again = s->shared ? prompt : batch_segment(b, p->prompt, p->prompt_len, 0, -1);
        batch_completion(b, again, p->rejected, p->rejected_len);
    }
    return s->count;
}

/* Micro-batches that the set takes. */
static inline int32_t answer_set_micros(const AnswerSet *s, Batch *b) {
    int32_t micros = 0;
    for (int32_t i = 0; i < s->count; micros++) i = answer_set_pack(s, b, i);
    return micros;
}

/* log sum_v p_v^2 at each target, for WPO: two times logp minus the log-probability at temperature 1/2, which has the same
 * logit doubled and the normaliser sum_v e^(2 z_v). After model_forward() on the batch, whose logp is given. */
static inline void answer_log_square(const Model *m, const Workspace *w, const Batch *b, const float *logp,
                                     float *square) {
    const Head head = model_head(m, w, b, 0.5f);
    m->backend->head(m->device, &head);
    m->backend->download(m->device, square, head.logp, (size_t)b->targets * sizeof *square);
    for (int32_t r = 0; r < b->targets; r++) square[r] = 2 * logp[r] - square[r];
}

#endif
