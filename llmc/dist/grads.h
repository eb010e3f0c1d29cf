/* grads.h - data-parallel optimizer step with overlapped gradient sums and ZeRO (Rajbhandari et al. 2020).
 *
 * Binds a model and its optimizer to the ranks of dist.h, whose head comment describes which sums are made when. A run
 * that trains two models (a policy and a critic) binds each:
 *
 *     DistGrads g;
 *     dist_grads_open(&g, &dist, &model, &optimizer, false);      // both were created with model.share
 *     for (int64_t step = 1; step <= steps; step++) {
 *         // micros: micro-batches of this rank; may be 0
 *         dist_grads_begin(&g, micros);
 *         for (int64_t i = 0; i < micros; i++)                 // the sums begin in the last backward pass
 *             model_backward(&model, &work, &batch, 1.0f, dlogp, NULL, NULL);     // model/transformer.h
 *         // replaces optimizer_step()
 *         OptimizerResult result = dist_grads_update(&g, lr);
 *     }
 *
 * With zero 2 the gradients of a layer are stored in one of two buffers that the layers use alternately. After every
 * micro-batch they are summed over the ranks and added to the slices that each rank keeps. All ranks therefore take
 * part in as many rounds as the rank with the most micro-batches has; the others contribute zeros.
 *
 * If the backward passes of two models alternate, one of them is opened with `late` set: its sums begin in
 * dist_grads_update(), which is called after the other model's, and it needs no dist_grads_begin(). The order of all
 * messages is then the same on all ranks.
 *
 * With one rank these calls do no more than optimizer_step().
 */
#ifndef LLMC_DIST_GRADS_H
#define LLMC_DIST_GRADS_H

#include "../base/clock.h"      /* clock_seconds */
#include "../base/error.h"      /* Error, xcalloc, error_set, xmalloc */
#include "../model/backend.h"   /* floats_at, Floats, Backend */
#include "../model/model.h"     /* Model, model_grad, model_settle_grads, model_sync, ... */
#include "../model/optimizer.h" /* Optimizer, OptimizerResult, Slice, optimizer_square, ... */
#include "../model/tensors.h"   /* TENSOR_COUNT, tensor_trained, TensorInfo, tensor_of_layer */
#include "dist.h"               /* dist_failed, Dist, dist_max, dist_sum */
#include "link.h"               /* DistPiece, DistLink */

enum { DIST_BUCKET = 1 << 20 };  /* minimum number of floats in one sum */
enum { DIST_WEIGHTS = 1 << 24 }; /* minimum number of weights in one all-gather */

/* Pieces first ... first+count-1 are complete when a backward pass has finished this layer, or the whole pass if it is
 * -1. */
typedef struct DistBucket {
    int first, count, layer;
} DistBucket;

typedef struct DistGrads {
    Dist *d;
    Model *model;
    Optimizer *optimizer;
    DistPiece *piece; /* gradients, in the order in which they are summed */
    DistBucket *bucket;
    int pieces, buckets, next; /* next: the first bucket of this round whose sum has not begun */
    double micros, rounds;     /* micro-batches in this step: of this rank, the maximum over all ranks */
    double done;               /* micro-batches done in this step */
    bool late;                 /* the sums begin in dist_grads_update() */
    bool begun, failed;
    Error error; /* of a call within a backward pass; reported by the next call */
} DistGrads;

static inline bool dist_zero2(const DistGrads *g) { return g->optimizer->layer_grads != NULL; }

static inline bool dist_of_layer(const DistGrads *g, int tensor) { return tensor_of_layer(&g->model->tensor[tensor]); }

static inline void dist_piece(DistGrads *g, int tensor, int layer) {
    const TensorInfo *t = &g->model->tensor[tensor];
    DistPiece p = {.x = model_grad(g->model, tensor, layer), .n = t->rows * t->columns};
    if (dist_zero2(g) && dist_of_layer(g, tensor))
        for (int i = 0; i < g->optimizer->slices; i++) {
            const Slice *s = &g->optimizer->slice[i];
            if (s->tensor == tensor && s->layer == layer) p.into = floats_at(g->optimizer->layer_grads, s->at);
        }
    g->piece[g->pieces++] = p;
    g->bucket[g->buckets].count++;
}

static inline void dist_bucket_end(DistGrads *g, int layer) {
    g->bucket[g->buckets++].layer = layer;
    g->bucket[g->buckets].first = g->pieces;
}

/* Makes the buckets in the order of the backward pass: from the last layer to the first, then the tensors outside
 * layers. */
static inline void dist_buckets(DistGrads *g) {
    const int L = g->model->config.layers;
    size_t filled = 0;
    g->piece = (DistPiece *)xcalloc((size_t)(L + 1) * TENSOR_COUNT, sizeof *g->piece);
    g->bucket = (DistBucket *)xcalloc((size_t)L + 2, sizeof *g->bucket);
    for (int l = L - 1; l >= 0; l--) {
        for (int i = 0; i < TENSOR_COUNT; i++)
            if (dist_of_layer(g, i)) {
                dist_piece(g, i, l);
                filled += g->piece[g->pieces - 1].n;
            }
        if (filled < DIST_BUCKET && l > 0 && !dist_zero2(g)) continue;
        dist_bucket_end(g, l);
        filled = 0;
    }
    for (int i = 0; i < TENSOR_COUNT; i++)
        if (tensor_trained(&g->model->tensor[i]) && !dist_of_layer(g, i)) dist_piece(g, i, 0);
    dist_bucket_end(g, -1);
}

/* ---- the sums -------------------------------------------------------------------------------------------------- */

static inline bool dist_bucket_start(DistGrads *g, Error *e) {
    const DistBucket *b = &g->bucket[g->next++];
    return g->d->device.link->reduce(g->d->device.state, g->piece + b->first, b->count, !g->optimizer->sharded, e);
}

/* zero 2: clears the buffer of a bucket's layer for the layer that uses it next. */
static inline void dist_bucket_clear(DistGrads *g, int bucket) {
    const DistBucket *b = &g->bucket[bucket];
    for (int i = b->first; i < b->first + b->count; i++)
        g->model->backend->zero(g->model->device, g->piece[i].x, g->piece[i].n * sizeof(float));
}

/* zero 2, after the backward pass of a layer: begins its sum and finishes the sum of the layer above. */
static inline bool dist_layer_done(DistGrads *g, int layer, Error *e) {
    const DistLink *link = g->d->device.link;
    if (layer >= 0) {
        if (!dist_bucket_start(g, e) || !link->finish(g->d->device.state, 1, e)) return false;
        if (g->next > 1) dist_bucket_clear(g, g->next - 2);
        return true;
    }
    if (!link->finish(g->d->device.state, 0, e)) return false;
    dist_bucket_clear(g, g->next - 1);
    g->done++;
    if (g->done == g->rounds) return dist_bucket_start(g, e);
    g->next = 0;
    return true;
}

/* model.h's layer_done. */
static inline void dist_on_layer(void *context, int layer) {
    DistGrads *g = (DistGrads *)context;
    if (g->failed) return;
    bool ok =
        g->done < g->micros || error_set(&g->error, "more backward passes than the number given to dist_grads_begin()");
    if (!ok) g->failed = true;
    else if (dist_zero2(g)) ok = dist_layer_done(g, layer, &g->error);
    else {
        if (g->done == g->micros - 1 && g->next < g->buckets && g->bucket[g->next].layer == layer)
            ok = dist_bucket_start(g, &g->error);
        if (ok) ok = g->d->device.link->progress(g->d->device.state, &g->error);
        g->done += layer < 0;
    }
    g->failed = !ok;
}

/* Dist's callback settle: begins the remaining sums of the step and waits for all of them. */
static inline bool dist_grads_finish(void *context, Error *e) {
    DistGrads *g = (DistGrads *)context;
    const double start = clock_seconds();
    g->d->settle = NULL;
    if (g->failed) return error_set(e, "%s", g->error.text);
    while (dist_zero2(g) &&
           g->done < g->rounds) { /* contributes zeros to the rounds of ranks with more micro-batches */
        for (int l = g->model->config.layers - 1; l >= -1; l--)
            if (!dist_layer_done(g, l, e)) return false;
    }
    while (!dist_zero2(g) && g->next < g->buckets)
        if (!dist_bucket_start(g, e)) return false;
    const bool ok = g->d->device.link->finish(g->d->device.state, 0, e);
    g->d->waited += clock_seconds() - start;
    return ok;
}

/* ---- states ---------------------------------------------------------------------------------------------------- */

/* optimizer.h's callback collect: copies this rank's slice of a layer of a tensor to the memory of its gradients, then
 * all-gathers the slices. */
static inline bool dist_grads_collect(void *context, const Floats *array, int tensor, int layer, Error *e) {
    DistGrads *g = (DistGrads *)context;
    const Model *m = g->model;
    const DistPiece p = {.x = model_grad(m, tensor, layer), .n = m->tensor[tensor].rows * m->tensor[tensor].columns};
    for (int i = 0; i < g->optimizer->slices; i++) {
        const Slice *s = &g->optimizer->slice[i];
        if (s->tensor != tensor || s->layer != layer) continue;
        float *host = (float *)xmalloc(s->n * sizeof *host);
        m->backend->download(m->device, host, floats_at(array, s->at), s->n * sizeof *host);
        m->backend->upload(m->device, floats_at((const Floats *)p.x, s->first), host, s->n * sizeof *host);
        free(host);
    }
    return g->d->device.link->gather(g->d->device.state, &p, 1, sizeof(float), e) &&
           g->d->device.link->finish(g->d->device.state, 0, e);
}

/* ---- the step -------------------------------------------------------------------------------------------------- */

/* m, o: created with m->share; dist_grads_update() trains them from now on. late: see above; the share of a late model
 * is that of a single rank. */
static inline void dist_grads_open(DistGrads *g, Dist *d, Model *m, Optimizer *o, bool late) {
    *g = (DistGrads){.d = d, .model = m, .optimizer = o, .late = late};
    if (d->ranks == 1) return;
    dist_buckets(g);
    if (late) return;
    m->layer_done = dist_on_layer;
    m->layer_context = g;
    o->collect = dist_grads_collect;
    o->collect_context = g;
}

static inline void dist_grads_close(DistGrads *g) {
    if (g->model) g->model->layer_done = NULL;
    free(g->piece), free(g->bucket);
    *g = (DistGrads){0};
}

/* Call before the first backward pass of a step. micros: number of backward passes that this rank will run.
 * Collective. */
static inline void dist_grads_begin(DistGrads *g, int64_t micros) {
    g->micros = g->rounds = (double)micros;
    g->done = 0;
    g->next = 0;
    g->begun = true;
    g->failed = false;
    if (g->d->ranks == 1) return;
    model_settle_grads(g->model); /* sums over the ranks read their memory */
    assert(!g->d->settle);        /* the step of another model is over */
    if (dist_zero2(g)) dist_max(g->d, &g->rounds, 1);
    g->d->settle = dist_grads_finish;
    g->d->settle_context = g;
}

/* zero 1 and 2: all-gathers the new weights of each rank. */
static inline bool dist_grads_weights(DistGrads *g, Error *e) {
    const Model *m = g->model;
    const Backend *b = m->backend;
    DistPiece *piece = (DistPiece *)xcalloc((size_t)g->pieces, sizeof *piece);
    size_t filled = 0;
    int n = 0;
    bool ok = true;
    for (int i = 0; ok && i < TENSOR_COUNT; i++)
        for (int l = 0; ok && l < (tensor_trained(&m->tensor[i]) ? (int)m->tensor[i].layers : 0); l++) {
            piece[n] = (DistPiece){.x = (void *)(uintptr_t)model_weight(m, i, l),
                                   .n = m->tensor[i].rows * m->tensor[i].columns};
            filled += piece[n++].n;
            if (filled < DIST_WEIGHTS) continue;
            ok = g->d->device.link->gather(g->d->device.state, piece, n, b->weight_size, e);
            filled = 0;
            n = 0;
        }
    if (ok && n) ok = g->d->device.link->gather(g->d->device.state, piece, n, b->weight_size, e);
    ok = ok && g->d->device.link->finish(g->d->device.state, 0, e);
    if (ok && b->weights_changed) b->weights_changed(m->device, m->weights, m->stored);
    model_weights_changed(m);
    free(piece);
    return ok;
}

/* Finishes the step's sums; a late model's begin here. */
static inline void dist_grads_settle(DistGrads *g) {
    Error e;
    g->begun = false;
    if (g->late) g->next = 0;
    if (g->late && g->d->ranks > 1) {
        model_settle_grads(g->model);
        if (!dist_grads_finish(g, &e)) dist_failed(g->d, &e);
    } else if (g->d->settle && !g->d->settle(g->d->settle_context, &e)) dist_failed(g->d, &e);
}

/* Ends the step without an update and zeroes the gradients. Collective. */
static inline void dist_grads_discard(DistGrads *g) {
    const Model *m = g->model;
    dist_grads_settle(g);
    model_zero_grads(m);
    if (dist_zero2(g)) m->backend->zero(m->device, g->optimizer->layer_grads, g->optimizer->count * sizeof(float));
}

/* Ends the step: the sums, the gradient norm, the update at learning rate lr, the all-gather of the weights.
 * Collective. */
static inline OptimizerResult dist_grads_update(DistGrads *g, double lr) {
    Error e;
    Optimizer *o = g->optimizer;
    dist_grads_settle(g);
    if (!model_sync(g->model, &e)) dist_failed(g->d, &e);
    double square = optimizer_square(o, g->model);
    if (o->sharded) dist_sum(g->d, &square, 1);
    const OptimizerResult result = optimizer_update(o, g->model, lr, sqrt(square));
    if (!o->sharded || result.skipped) return result;
    const double start = clock_seconds();
    if (!dist_grads_weights(g, &e)) dist_failed(g->d, &e);
    g->d->waited += clock_seconds() - start;
    return result;
}

#endif
