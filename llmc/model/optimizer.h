/* optimizer.h - AdamW over a model's tensors, with clipping by global norm and a guard against NaN and infinity.
 *
 *     Optimizer o;
 *     optimizer_new(&o, &model, &e);
 *     // backward passes add to model.grads
 *     OptimizerResult r = optimizer_step(&o, &model, lr);       // updates the weights and zeroes the gradients
 *     if (r.skipped) skipped++;                                 // the gradient was not finite: no weight was changed
 *
 * Several ranks can distribute the optimizer state (the model's share.zero is 1 or 2, see dist.h). Each rank then
 * updates only its slices of the tensors and keeps only their moments, stored one slice after another. With 2 it also
 * keeps the summed gradients of its slices of the layers. dist.h then performs a step in parts: it computes the norm
 * over all ranks, updates the slices and sends the weights to all ranks.
 *
 * Weight decay is decoupled and applies to matrices only (column `decay` in tensors.h). Defaults are TRL's: betas 0.9
 * and 0.999, eps 1e-8, decay 0, clipping at 1.
 */
#ifndef LLMC_MODEL_OPTIMIZER_H
#define LLMC_MODEL_OPTIMIZER_H

#include "../base/error.h" /* Error, xcalloc, xmalloc */
#include "backend.h"       /* Floats, Backend, floats_at, AdamW */
#include "config.h"        /* ModelConfig */
#include "model.h"         /* Model, model_weights_at, model_forget_grads, model_grad, ... */
#include "share.h"         /* Share, share_slice */
#include "tensors.h"       /* TENSOR_COUNT, TensorInfo, model_tensors, tensor_of_layer, ... */

/* A part of a tensor that this rank updates: elements first .. first+n-1 of layer `layer`. A single rank has one slice
 * per tensor, which covers all layers. */
typedef struct Slice {
    int tensor, layer;
    size_t first, n, at; /* at: offset of its moments in m and v */
} Slice;

typedef struct Optimizer {
    double beta1, beta2, eps, weight_decay, max_grad_norm; /* max_grad_norm 0 disables clipping */
    int64_t step;                                          /* updates made so far */
    size_t count;                                          /* elements of all slices; `parameters` for a single rank */
    Floats *m, *v;                                         /* (count) */
    Floats *master;      /* (count) float32 weights if the storage type is narrower; else NULL */
    Floats *layer_grads; /* (count) zero 2: sums over ranks; else NULL */
    Slice *slice;
    int slices;
    bool sharded;
    /* Gathers one layer of a tensor of a sharded array (m, v) into the memory of its gradients. Set by dist.h. */
    bool (*collect)(void *context, const Floats *array, int tensor, int layer, Error *e);
    void *collect_context;
} Optimizer;

typedef struct OptimizerResult {
    double grad_norm; /* before clipping */
    bool skipped;
} OptimizerResult;

static inline bool share_shards(Share share) { return share.ranks > 1 && share.zero > 0; }

/* Writes the slices of a rank to `slice` unless it is NULL. Returns their number; *count is set to their elements. */
static inline int optimizer_slices(const ModelConfig *c, Share share, Slice *slice, size_t *count) {
    TensorInfo t[TENSOR_COUNT];
    int n = 0;
    *count = 0;
    model_tensors(c, t);
    for (int i = 0; i < TENSOR_COUNT; i++) {
        const bool cut = share_shards(share);
        for (int l = 0; l < (cut ? (int)t[i].layers : 1); l++) {
            Slice s = {.tensor = i, .layer = l, .n = tensor_trained(&t[i]) ? t[i].size : 0, .at = *count};
            if (cut && s.n) share_slice(t[i].rows * t[i].columns, share.rank, share.ranks, &s.first, &s.n);
            if (!s.n) continue;
            if (slice) slice[n] = s;
            n++;
            *count += s.n;
        }
    }
    return n;
}

/* Bytes that optimizer_new() allocates on the device. */
static inline size_t optimizer_bytes_share(const ModelConfig *c, const Backend *b, Share share) {
    size_t count;
    optimizer_slices(c, share, NULL, &count);
    const bool layer_grads = share_shards(share) && share.zero == 2;
    return count * sizeof(float) * (2 + (b->weight_size < sizeof(float)) + layer_grads);
}

/* The same for a single rank. */
static inline size_t optimizer_bytes(const ModelConfig *c, const Backend *b) {
    const Share alone = {.ranks = 1};
    return optimizer_bytes_share(c, b, alone);
}

/* Offset of a slice in the model's block of parameters. */
static inline size_t slice_offset(const Model *m, const Slice *s) {
    const TensorInfo *t = &m->tensor[s->tensor];
    return t->offset + (size_t)s->layer * t->rows * t->columns + s->first;
}

/* Allocates a zeroed array over the slices; NULL on failure. */
static inline Floats *optimizer_array(const Optimizer *o, const Model *m, const char *what, Error *e) {
    return (Floats *)m->backend->alloc_zeroed(m->device, o->count * sizeof(float), what, e);
}

/* Copies weights [first, first + n), which were set from outside, to the masters. */
static inline void optimizer_take_weights(const Optimizer *o, const Model *m, size_t first, size_t n) {
    const Backend *b = m->backend;
    if (!o->master) return;
    for (int i = 0; i < o->slices; i++) {
        const Slice *s = &o->slice[i];
        const size_t offset = slice_offset(m, s), from = offset > first ? offset : first;
        const size_t last = offset + s->n < first + n ? offset + s->n : first + n;
        if (from >= last) continue;
        float *host = (float *)xmalloc((last - from) * sizeof *host);
        b->weights_download(m->device, host, model_weights_at(m, from), last - from);
        b->upload(m->device, floats_at(o->master, s->at + from - offset), host, (last - from) * sizeof *host);
        free(host);
    }
}

/* Allocates the state with zero moments and the default settings, which optimizer_configure() changes. */
static inline bool optimizer_new(Optimizer *o, const Model *m, Error *e) {
    const Backend *b = m->backend;
    *o = (Optimizer){.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .max_grad_norm = 1.0};
    o->slices = optimizer_slices(&m->config, m->share, NULL, &o->count);
    o->slice = (Slice *)xcalloc((size_t)o->slices, sizeof *o->slice);
    optimizer_slices(&m->config, m->share, o->slice, &o->count);
    o->sharded = share_shards(m->share);
    o->m = optimizer_array(o, m, "first moments", e);
    o->v = o->m ? optimizer_array(o, m, "second moments", e) : NULL;
    if (!o->v) return false;
    if (o->sharded && m->share.zero == 2) {
        o->layer_grads = optimizer_array(o, m, "summed gradients", e);
        if (!o->layer_grads) return false;
    }
    if (b->weight_size == sizeof(float)) return true;
    o->master = optimizer_array(o, m, "master weights", e);
    if (!o->master) return false;
    optimizer_take_weights(o, m, 0, m->parameters);
    return true;
}

/* Sets AdamW's constants and the norm to which all gradients together are clipped; 0 disables clipping. */
static inline void optimizer_configure(Optimizer *o, double beta1, double beta2, double eps, double weight_decay,
                                       double max_grad_norm) {
    o->beta1 = beta1;
    o->beta2 = beta2;
    o->eps = eps;
    o->weight_decay = weight_decay;
    o->max_grad_norm = max_grad_norm;
}

/* Discards the moments of a training state, for a run that starts only from its weights. */
static inline void optimizer_reset(Optimizer *o, const Model *m) {
    m->backend->zero(m->device, o->m, o->count * sizeof(float));
    m->backend->zero(m->device, o->v, o->count * sizeof(float));
    o->step = 0;
}

static inline void optimizer_free(Optimizer *o, const Model *m) {
    if (o->m) m->backend->release(m->device, o->m);
    if (o->v) m->backend->release(m->device, o->v);
    if (o->master) m->backend->release(m->device, o->master);
    if (o->layer_grads) m->backend->release(m->device, o->layer_grads);
    free(o->slice);
    *o = (Optimizer){0};
}

static inline Floats *optimizer_grads(const Optimizer *o, const Model *m, const Slice *s) {
    if (o->layer_grads && tensor_of_layer(&m->tensor[s->tensor])) return floats_at(o->layer_grads, s->at);
    return floats_at(model_grad(m, s->tensor, s->layer), s->first);
}

/* Sum of the squares of the gradients of this rank's slices. */
static inline double optimizer_square(const Optimizer *o, const Model *m) {
    const Backend *b = m->backend;
    model_settle_grads(m);
    if (!o->sharded) return b->square_sum(m->device, m->grads, m->grads_count);
    double sum = 0;
    for (int i = 0; i < o->slices; i++)
        sum += b->square_sum(m->device, optimizer_grads(o, m, &o->slice[i]), o->slice[i].n);
    return sum;
}

/* Updates this rank's slices at learning rate lr, unless the norm of all gradients is not finite, and makes the gradients
 * 0 (model_forget_grads). The clipping factor is min(1, max_grad_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_. */
static inline OptimizerResult optimizer_update(Optimizer *o, Model *m, double lr, double norm) {
    const Backend *b = m->backend;
    const OptimizerResult result = {.grad_norm = norm, .skipped = !isfinite(norm)};
    if (!result.skipped) {
        const double factor = o->max_grad_norm / (norm + 1e-6);
        o->step++;
        for (int i = 0; i < o->slices; i++) {
            const Slice *s = &o->slice[i];
            const size_t at = slice_offset(m, s);
            const AdamW update = {.n = s->n,
                                  .lr = (float)lr,
                                  .beta1 = (float)o->beta1,
                                  .beta2 = (float)o->beta2,
                                  .eps = (float)o->eps,
                                  .weight_decay = m->tensor[s->tensor].decay ? (float)o->weight_decay : 0.0f,
                                  .grad_scale = o->max_grad_norm > 0 && factor < 1 ? (float)factor : 1.0f,
                                  .step = o->step,
                                  .weights = model_weights_at(m, at),
                                  .master = o->master ? floats_at(o->master, s->at) : NULL,
                                  .grad = optimizer_grads(o, m, s),
                                  .m = floats_at(o->m, s->at),
                                  .v = floats_at(o->v, s->at),
                                  .first = at};
            b->adamw(m->device, &update);
        }
        model_weights_changed(m);
    }
    model_forget_grads(m);
    if (o->layer_grads) b->zero(m->device, o->layer_grads, o->count * sizeof(float));
    return result;
}

/* One update from m->grads, for a single rank. */
static inline OptimizerResult optimizer_step(Optimizer *o, Model *m, double lr) {
    return optimizer_update(o, m, lr, sqrt(optimizer_square(o, m)));
}

#endif
