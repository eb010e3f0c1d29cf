/* sequence.h - one sequence that grows token by token, with its key/value cache: a prompt's answer, a chat.
 *
 * rollout.h draws many samples as fast as the machine allows; this draws one, and hands over each token as it comes, so
 * that a caller may print it, stop, or go on with another text. What was run before is kept: sequence_set() with a text
 * that begins as the last one did costs only what is new, which is how a chat's next turn starts at once.
 *
 * A token is drawn as rollout.h draws it: by random_uniform(seed, stream + id, position). The same seed, id and prompt
 * give the same text here and there, up to the rounding of the matrix products.
 *
 *     Sequence s;
 *     if (!sequence_new(&s, &model, prompt_len + max_new, &e)) return false;
 *     sequence_set(&s, prompt, prompt_len);
 *     while (s.count < s.capacity && sequence_draw(&s, &sampling, id, &token, &logp, &e) && token != stop) print(token);
 *     sequence_free(&s);
 */
#ifndef LLMC_ROLLOUT_SEQUENCE_H
#define LLMC_ROLLOUT_SEQUENCE_H

#include "rollout.h"

enum { SEQUENCE_ROWS = 256 }; /* rows that go through the model at once */

typedef struct Sequence {
    const Model *model;
    int32_t capacity; /* most tokens, at most the model's context */
    int32_t count;    /* tokens that it holds */
    int32_t cached;   /* of these, the first whose keys and values are in the cache */
    int32_t *tokens;  /* (capacity) */
    int32_t *row;     /* (capacity) token i lies in cache row i */
    Workspace work;
    KVCache kv;
    Batch batch;
    Ints *history; /* (capacity) on the device; NULL until a repetition penalty asks for it */
} Sequence;

static inline void sequence_free(Sequence *s) {
    if (!s->model) return;
    workspace_free(&s->work, s->model), kv_free(&s->kv, s->model), batch_free(&s->batch);
    if (s->history) s->model->backend->release(s->model->device, s->history);
    free(s->tokens), free(s->row);
    *s = (Sequence){0};
}

/* capacity: the most tokens, prompt and all; more than the model's context is cut down to it. */
static inline bool sequence_new(Sequence *s, const Model *m, int64_t capacity, Error *e) {
    const int32_t context = m->config.context, n = capacity < context ? (int32_t)capacity : context;
    const int rows = n < SEQUENCE_ROWS ? n : SEQUENCE_ROWS;
    *s = (Sequence){.model = m, .capacity = n};
    s->tokens = (int32_t *)xcalloc((size_t)n, sizeof *s->tokens);
    s->row = (int32_t *)xcalloc((size_t)n, sizeof *s->row);
    for (int32_t i = 0; i < n; i++) s->row[i] = i;
    s->batch = batch_new(rows, 1, 1);
    if (workspace_new(&s->work, m, rows, 1, 1, false, 0, e) && kv_new(&s->kv, m, n, e)) return true;
    sequence_free(s);
    return false;
}

/* The sequence becomes these n tokens, 1 to capacity. What it has in common with the text before stays in the cache. */
static inline void sequence_set(Sequence *s, const int32_t *tokens, int32_t n) {
    assert(n >= 1 && n <= s->capacity);
    int32_t same = 0;
    while (same < n && same < s->cached && s->tokens[same] == tokens[same]) same++;
    memcpy(s->tokens, tokens, (size_t)n * sizeof *tokens);
    s->count = n, s->cached = same < n ? same : n - 1; /* the last token is always run: the next is drawn after it */
}

/* Runs what is not cached yet, draws the next token by `how` and appends it; id names the sample. The caller has seen to
 * it that there is room. *logp: as Completion has it. */
static inline bool sequence_draw(Sequence *s, const Sampling *how, uint64_t id, int32_t *token, float *logp, Error *e) {
    const Backend *b = s->model->backend;
    assert(s->count >= 1 && s->count < s->capacity && s->cached < s->count);
    const Draw draw = {.temperature = how->temperature,
                       .top_p = how->top_p,
                       .min_p = how->min_p,
                       .top_k = how->top_k,
                       .repetition_penalty = how->repetition_penalty,
                       .seed = how->seed};
    const uint64_t name = how->stream + id;
    const int32_t stream[2] = {(int32_t)(uint32_t)name, (int32_t)(uint32_t)(name >> 32)};
    DecodeStep step = {.stream = stream, .index = &s->count, .token = token, .logp = logp};
    if (how->repetition_penalty != 1.0f) {
        const size_t bytes = (size_t)s->capacity * sizeof(int32_t);
        if (!s->history) s->history = (Ints *)b->alloc(s->model->device, bytes, "token history", e);
        if (!s->history) return false;
        b->upload(s->model->device, s->history, s->tokens, bytes);
        step.history = s->history, step.history_len = &s->count, step.history_stride = s->capacity;
    }
    while (s->cached < s->count) {
        const int32_t left = s->count - s->cached, n = left < s->work.rows ? left : s->work.rows;
        batch_clear(&s->batch);
        batch_segment(&s->batch, s->tokens + s->cached, n, s->cached, -1);
        s->batch.segment[0].key_start = 0, s->batch.segment[0].past = s->cached;
        if (n == left) batch_target(&s->batch, n - 1, 0);
        step.slot = s->row + s->cached;
        model_decode(s->model, &s->work, &s->kv, &s->batch, draw, &step);
        s->cached += n;
    }
    if (!model_sync(s->model, e)) return false;
    s->tokens[s->count++] = *token;
    return true;
}

#endif
