/* optimizer.h - AdamW over a model's tensors, clipping by global norm, and the guard against NaN and infinity.
 *
 *     Optimizer o;  optimizer_new(&o, &model, &e);
 *     ... backward passes add to model.grads ...
 *     OptimizerResult r = optimizer_step(&o, &model, lr);       // updates, zeroes the gradients
 *     if (r.skipped) ...                                        // the gradient was not finite: nothing was changed
 *
 * Weight decay is decoupled and falls on matrices only (config.h says which). Defaults are TRL's: betas 0.9 and 0.999,
 * eps 1e-8, decay 0, clipping at 1.
 */
#ifndef LLMC_OPTIMIZER_H
#define LLMC_OPTIMIZER_H

#include "gpt2.h"

typedef struct Optimizer {
    double beta1, beta2, eps, weight_decay, max_grad_norm; /* max_grad_norm 0: no clipping */
    int64_t step;                                          /* updates made so far */
    Floats *m, *v;                                         /* (parameters) */
    Floats *master;                                        /* float32 weights where the storage type is narrower */
} Optimizer;

typedef struct OptimizerResult {
    double grad_norm; /* before clipping */
    bool skipped;
} OptimizerResult;

static inline size_t optimizer_bytes(const GPT2Config *c, const Backend *b) {
    TensorInfo t[GPT2_TENSOR_COUNT];
    return gpt2_tensors(c, t) * (2 * sizeof(float) + (b->weight_size < sizeof(float) ? sizeof(float) : 0));
}

/* Zero moments. Set the fields beta1 ... max_grad_norm after this call where they are not the defaults. */
static inline bool optimizer_new(Optimizer *o, const GPT2 *m, Error *e) {
    const Backend *b = m->backend;
    const size_t bytes = m->parameters * sizeof(float);
    *o = (Optimizer){.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .max_grad_norm = 1.0};
    o->m = (Floats *)b->alloc(m->device, bytes, "first moments", e);
    o->v = o->m ? (Floats *)b->alloc(m->device, bytes, "second moments", e) : NULL;
    if (!o->v) return false;
    b->zero(m->device, o->m, bytes), b->zero(m->device, o->v, bytes);
    if (b->weight_size == sizeof(float)) return true;
    o->master = (Floats *)b->alloc(m->device, bytes, "master weights", e);
    if (!o->master) return false;
    float *host = (float *)xmalloc(bytes);
    b->weights_download(m->device, host, m->weights, m->parameters);
    b->upload(m->device, o->master, host, bytes);
    free(host);
    return true;
}

static inline void optimizer_free(Optimizer *o, const GPT2 *m) {
    if (o->m) m->backend->release(m->device, o->m);
    if (o->v) m->backend->release(m->device, o->v);
    if (o->master) m->backend->release(m->device, o->master);
    *o = (Optimizer){0};
}

/* One update at learning rate lr from m->grads, which are zeroed. The clipping factor is
 * min(1, max_grad_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_. */
static inline OptimizerResult optimizer_step(Optimizer *o, GPT2 *m, double lr) {
    const Backend *b = m->backend;
    OptimizerResult result = {.grad_norm = sqrt(b->square_sum(m->device, m->grads, m->parameters))};
    result.skipped = !isfinite(result.grad_norm);
    if (!result.skipped) {
        const double factor = o->max_grad_norm / (result.grad_norm + 1e-6);
        o->step++;
        for (int i = 0; i < GPT2_TENSOR_COUNT; i++) {
            const TensorInfo *t = &m->tensor[i];
            if (!t->size) continue;
            const AdamW update = {.n = t->size,
                                  .lr = (float)lr,
                                  .beta1 = (float)o->beta1,
                                  .beta2 = (float)o->beta2,
                                  .eps = (float)o->eps,
                                  .weight_decay = t->decay ? (float)o->weight_decay : 0.0f,
                                  .grad_scale = o->max_grad_norm > 0 && factor < 1 ? (float)factor : 1.0f,
                                  .step = o->step,
                                  .weights = weights_at(b, m->weights, t->offset),
                                  .master = o->master ? floats_at(o->master, t->offset) : NULL,
                                  .grad = floats_at(m->grads, t->offset),
                                  .m = floats_at(o->m, t->offset),
                                  .v = floats_at(o->v, t->offset)};
            b->adamw(m->device, &update);
        }
    }
    gpt2_zero_grads(m);
    return result;
}

#endif
