/* decode.h - a step of cached decoding, which runs new tokens of any number of sequences and draws one token after
 * each.
 *
 *     DecodeStep step = {.slot = slot, .stream = stream, .index = position, .token = token, .logp = logp};
 *     model_decode(&model, &work, &kv, &batch, how, &step);
 *
 * A hook that samples from several models runs decode_rows() for each of them and then decode_draw() once.
 */
#ifndef LLMC_MODEL_DECODE_H
#define LLMC_MODEL_DECODE_H

#include "backend.h"     /* Draw, Acts, Backend, Device, ... */
#include "batch.h"       /* Batch */
#include "model.h"       /* Model, model_output_blocks, model_output_weights */
#include "transformer.h" /* model_targets, model_trunk */
#include "workspace.h"   /* work_ints, Workspace, KVCache, WORK_index, ... */

/* Arrays of a decode step; all but `history` are on the host. N rows, R targets. */
typedef struct DecodeStep {
    const int32_t *slot;        /* (N) cache row for the keys and values of each row */
    const int32_t *stream;      /* (R, 2) */
    const int32_t *index;       /* (R) */
    const Ints *history;        /* (R, history_stride) on the device, or NULL */
    const int32_t *history_len; /* (R) */
    int history_stride;
    int32_t *token;   /* (R) result */
    float *logp;      /* (R) result */
    float *kept_logp; /* (R) result, or NULL */
} DecodeStep;

/* Runs the batch's rows (batch.h describes how segments refer to rows of the cache), stores their keys and values in
 * the cache, and gathers the input of the head of each target row. */
static inline void decode_rows(const Model *m, const Workspace *w, const KVCache *kv, const Batch *batch,
                               const DecodeStep *step) {
    assert(batch->rows <= w->rows && batch->targets <= w->targets && batch->segments <= w->segments);
    m->backend->upload(m->device, work_ints(w, WORK_slot), step->slot, (size_t)batch->rows * sizeof(int32_t));
    model_trunk(m, w, batch, kv);
    if (batch->targets) model_targets(m, w, batch);
}

/* Sets the output matrix of `how` to the model's. */
static inline void decode_head(Draw *how, const Model *m) {
    how->weight = model_output_weights(m);
    how->matrix = model_output_blocks(m);
    how->channels = m->config.width;
}

/* Draws a token after each of R rows h (R, how.channels) with the settings and the output matrix of `how`, whose other fields
 * are filled in here. */
static inline void decode_draw(const Model *m, const Workspace *w, Draw how, const DecodeStep *step, const Acts *h,
                               size_t R) {
    const Backend *b = m->backend;
    Device *d = m->device;
    b->upload(d, work_ints(w, WORK_stream), step->stream, 2 * R * sizeof(int32_t));
    b->upload(d, work_ints(w, WORK_index), step->index, R * sizeof(int32_t));
    how.rows = (int)R;
    how.vocab = m->config.vocab;
    how.padded_vocab = m->config.padded_vocab;
    how.cap = m->config.logit_cap;
    how.h = h;
    how.stream = work_ints(w, WORK_stream);
    how.index = work_ints(w, WORK_index);
    how.history = step->history;
    how.history_stride = step->history_stride;
    if (step->history) {
        b->upload(d, work_ints(w, WORK_seen_count), step->history_len, R * sizeof(int32_t));
        how.history_len = work_ints(w, WORK_seen_count);
    }
    how.token = work_ints(w, WORK_argmax);
    how.logp = work_floats(w, WORK_logp, 0);
    how.kept_logp = step->kept_logp ? work_floats(w, WORK_entropy, 0) : NULL;
    b->sample(d, &how);
    b->download(d, step->token, how.token, R * sizeof(int32_t));
    b->download(d, step->logp, how.logp, R * sizeof(float));
    if (step->kept_logp) b->download(d, step->kept_logp, how.kept_logp, R * sizeof(float));
}

/* Runs the batch's rows, which are new tokens of any number of sequences, and draws a token after each target row. */
static inline void model_decode(const Model *m, const Workspace *w, const KVCache *kv, const Batch *batch, Draw how,
                                const DecodeStep *step) {
    decode_rows(m, w, kv, batch, step);
    decode_head(&how, m);
    if (batch->targets) decode_draw(m, w, how, step, work_acts(w, WORK_h, 0), (size_t)batch->targets);
}

#endif
