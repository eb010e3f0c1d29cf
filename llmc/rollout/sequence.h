/* sequence.h - token-by-token sampling of a single sequence with its own key/value cache, for streaming and chat.
 *
 * rollout.h draws many samples with maximum throughput. A Sequence draws one and returns each token at once, so that
 * the caller can print it, stop, or continue with another text. Tokens already in the cache are reused: sequence_set()
 * with a text that shares a prefix with the previous one costs only the rest, so a chat's next turn starts at once.
 *
 * A model with longrope computes with the list of short sequences while the text has no more tokens than the model's
 * original context, then with the other, as transformers does; the cache is then computed again (rotary.h). A
 * cache that has grown keeps the long list, also for a shorter text.
 *
 * Each token is drawn with random_uniform(seed, stream + id, position), as in rollout.h. The same seed, id and prompt
 * give the same text in both, up to the rounding of the matrix products.
 *
 *     Sequence s;
 *     int32_t token;
 *     float logp;
 *     if (!sequence_new(&s, &model, prompt_len + max_new, &e)) return false;
 *     sequence_set(&s, prompt, prompt_len);
 *     while (s.count < s.capacity && sequence_draw(&s, &sampling, id, &token, &logp, &e) && token != stop)
 *         print(token);
 *     sequence_free(&s);
 */
#ifndef LLMC_ROLLOUT_SEQUENCE_H
#define LLMC_ROLLOUT_SEQUENCE_H

#include "../base/error.h"      /* Error, xcalloc */
#include "../model/backend.h"   /* Ints, Backend, Draw */
#include "../model/batch.h"     /* Batch */
#include "../model/config.h"    /* Rope */
#include "../model/decode.h"    /* DecodeStep, model_decode */
#include "../model/model.h"     /* Model, model_set_longest, model_sync */
#include "../model/pack.h"      /* batch_clear, batch_free, batch_new, batch_segment, ... */
#include "../model/rotary.h"    /* rope_has_lists */
#include "../model/workspace.h" /* kv_free, kv_new, KVCache, Workspace, ... */
#include "rollout.h"            /* Sampling */

enum { SEQUENCE_ROWS = 256 }; /* tokens per forward pass */

typedef struct Sequence {
    const Model *model;
    int32_t capacity; /* maximum tokens, at most the model's context */
    int32_t count;    /* number of tokens */
    int32_t cached;   /* number of leading tokens whose keys and values are cached */
    int32_t *tokens;  /* (capacity) */
    int32_t *row;     /* (capacity) row[i] = i, the cache row of token i */
    Workspace work;
    KVCache kv;
    Batch batch;
    Ints *history; /* (capacity) on the device; NULL until a repetition penalty needs it */
} Sequence;

static inline void sequence_free(Sequence *s) {
    if (!s->model) return;
    workspace_free(&s->work, s->model);
    kv_free(&s->kv, s->model);
    batch_free(&s->batch);
    if (s->history) s->model->backend->release(s->model->device, s->history);
    free(s->tokens), free(s->row);
    *s = (Sequence){0};
}

enum { SEQUENCE_CACHE = 2048 }; /* tokens of a new cache, which grows with the sequence */

/* Returns the rows of a cache of `rows` that holds `count` tokens: fewer if longrope's short list can serve all of them. */
static inline int32_t sequence_stop(const Sequence *s, int32_t rows, int32_t count) {
    const Rope *r = &s->model->config.rope;
    return rope_has_lists(r) && count <= r->original && rows > r->original ? r->original : rows;
}

/* capacity: maximum tokens including the prompt; reduced to the model's context if larger. */
static inline bool sequence_new(Sequence *s, const Model *m, int64_t capacity, Error *e) {
    const int32_t context = m->config.context, n = capacity < context ? (int32_t)capacity : context;
    const int rows = n < SEQUENCE_ROWS ? n : SEQUENCE_ROWS;
    *s = (Sequence){.model = m, .capacity = n};
    s->tokens = (int32_t *)xcalloc((size_t)n, sizeof *s->tokens);
    s->row = (int32_t *)xcalloc((size_t)n, sizeof *s->row);
    for (int32_t i = 0; i < n; i++) s->row[i] = i;
    s->batch = batch_new(rows, 1, 1);
    const int32_t cache = n < SEQUENCE_CACHE ? n : SEQUENCE_CACHE;
    if (workspace_new(&s->work, m, rows, 1, 1, false, 0, e) && kv_new(&s->kv, m, sequence_stop(s, cache, 1), e)) {
        model_set_longest(m, s->kv.rows);
        return true;
    }
    sequence_free(s);
    return false;
}

/* Doubles the cache until the sequence fits. Its contents are computed again. */
static inline bool sequence_grow(Sequence *s, Error *e) {
    int32_t rows = s->kv.rows;
    if (s->count <= rows) return true;
    while (rows < s->count) rows = rows > s->capacity / 2 ? s->capacity : 2 * rows;
    kv_free(&s->kv, s->model);
    s->cached = 0;
    rows = sequence_stop(s, rows, s->count);
    model_set_longest(s->model, rows);
    return kv_new(&s->kv, s->model, rows, e);
}

/* Sets the sequence to n tokens, 1 <= n <= capacity. The common prefix with the previous tokens stays in the cache. */
static inline void sequence_set(Sequence *s, const int32_t *tokens, int32_t n) {
    assert(n >= 1 && n <= s->capacity);
    int32_t same = 0;
    while (same < n && same < s->cached && s->tokens[same] == tokens[same]) same++;
    memcpy(s->tokens, tokens, (size_t)n * sizeof *tokens);
    s->count = n;
    s->cached = same < n ? same : n - 1; /* always run the last token, to draw the next one */
}

/* Runs the tokens that are not cached yet, draws the next token and appends it. id identifies the sample. There must be
 * room: count < capacity. *logp: as in Completion. */
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
        b->upload(s->model->device, s->history, s->tokens, (size_t)s->count * sizeof(int32_t));
        step.history = s->history;
        step.history_len = &s->count;
        step.history_stride = s->capacity;
    }
    if (!sequence_grow(s, e)) return false;
    while (s->cached < s->count) {
        const int32_t left = s->count - s->cached, n = left < s->work.rows ? left : s->work.rows;
        batch_clear(&s->batch);
        batch_segment(&s->batch, s->tokens + s->cached, n, s->cached, -1);
        s->batch.segment[0].key_start = 0;
        s->batch.segment[0].past = s->cached;
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
