/* model_state.h - the tensors of a training state: Adam's moments, master weights and adapters, in the file of
 * model_container.h.
 *
 *   llmc.optimizer.m.NAME        first moments of a tensor of tensors.h, F32 (layers, rows, columns)
 *   llmc.optimizer.v.NAME        second moments
 *   llmc.optimizer.master.NAME   float32 weights of a device that computes with narrower ones
 *   llmc.adapter.NAME            low-rank adapters under peft's names (peft.h), F32
 *
 * Only tensors that are trained have moments. A state of a model with adapters holds the adapters and what belongs to
 * them, and not the weights of the base. The arrays of a sharded optimizer are collected from all ranks as they are
 * written: every rank makes the same calls, and the file is the same for any number of ranks.
 */
#ifndef LLMC_MODEL_MODEL_STATE_H
#define LLMC_MODEL_MODEL_STATE_H

#include "../base/error.h" /* Error, error_set, xmalloc */
#include "backend.h"       /* Floats, floats_at */
#include "lora.h"          /* model_trained_first */
#include "model.h"         /* Model, ModelChunk, model_each_chunk, model_download, ... */
#include "model_load.h"    /* weights_finite, model_put_slices, model_put_weights */
#include "optimizer.h"     /* Optimizer */
#include "peft.h"          /* PeftTensor, peft_tensors, peft_by_name */
#include "safetensors.h"   /* SafetensorsWriter, SAFETENSORS_F32, SafeTensor, Safetensors, ... */
#include "tensors.h"       /* TensorInfo, TENSOR_COUNT, tensor_trained */

enum { MODEL_STATE_ARRAYS = 3, MODEL_STATE_NAME = 160 };

#define MODEL_STATE_OPTIMIZER "llmc.optimizer."
#define MODEL_STATE_ADAPTER   "llmc.adapter."

static const char *const model_state_array_name[MODEL_STATE_ARRAYS] = {"m", "v", "master"};

/* The array number k of an optimizer; NULL if it has none. */
static inline Floats *model_state_array(const Optimizer *o, int k) { return k == 0 ? o->m : k == 1 ? o->v : o->master; }

static inline void model_state_name(char name[MODEL_STATE_NAME], int k, const TensorInfo *t) {
    snprintf(name, MODEL_STATE_NAME, MODEL_STATE_OPTIMIZER "%s.%s", model_state_array_name[k], t->name);
}

/* Finds the array and the trained tensor that a tensor of the file holds. */
static inline bool model_state_find(const Model *m, const char *name, int *k, int *tensor) {
    char other[MODEL_STATE_NAME];
    for (*k = 0; *k < MODEL_STATE_ARRAYS; (*k)++)
        for (*tensor = 0; *tensor < TENSOR_COUNT; (*tensor)++) {
            if (!tensor_trained(&m->tensor[*tensor])) continue;
            model_state_name(other, *k, &m->tensor[*tensor]);
            if (!strcmp(name, other)) return true;
        }
    return false;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* Announces the optimizer's arrays. */
static inline void model_state_plan(SafetensorsWriter *w, const Model *m, const Optimizer *o) {
    char name[MODEL_STATE_NAME];
    for (int k = 0; k < MODEL_STATE_ARRAYS; k++)
        for (int i = 0; i < TENSOR_COUNT; i++) {
            const TensorInfo *t = &m->tensor[i];
            if (!tensor_trained(t) || !model_state_array(o, k)) continue;
            model_state_name(name, k, t);
            safetensors_add(w, name, SAFETENSORS_F32, 3, (const uint64_t[]){t->layers, t->rows, t->columns});
        }
}

/* Writes n floats of the device. */
static inline bool model_state_put_floats(SafetensorsWriter *w, const Model *m, const Floats *from, size_t n,
                                          Error *e) {
    ModelChunk c = {0};
    bool ok = true;
    while (ok && model_each_chunk(&c, n)) {
        m->backend->download(m->device, c.host, floats_at(from, c.at), c.n * sizeof *c.host);
        ok = safetensors_put(w, c.host, c.n * sizeof *c.host, e);
    }
    free(c.host);
    return ok;
}

/* Writes the array of this name. A sharded one is gathered layer by layer into the memory of the gradients, which are
 * zero between steps. w: NULL on ranks that do not write. Collective if the optimizer is sharded. */
static inline bool model_state_put(SafetensorsWriter *w, const Model *m, const Optimizer *o, const char *name,
                                   Error *e) {
    int k, i;
    const bool known = model_state_find(m, name, &k, &i);
    assert(known);
    (void)known;
    const TensorInfo *t = &m->tensor[i];
    const Floats *from = model_state_array(o, k);
    if (!o->sharded)
        return !w || model_state_put_floats(w, m, floats_at(from, t->offset - model_trained_first(m)), t->size, e);
    bool ok = true;
    for (int l = 0; ok && l < (int)t->layers; l++) {
        ok = o->collect(o->collect_context, from, i, l, e);
        if (ok && w) ok = model_state_put_floats(w, m, model_grad(m, i, l), t->rows * t->columns, e);
    }
    return ok;
}

/* Called instead of model_save() on the ranks that do not write a training state: takes part in its collective calls,
 * in the order in which the file has the arrays. */
static inline bool model_save_beside(const Model *m, const Optimizer *o, Error *e) {
    SafetensorsWriter w = {0};
    bool ok = true;
    if (!o->sharded) return true;
    model_state_plan(&w, m, o);
    qsort(w.tensor, w.count, sizeof *w.tensor, safetensors_written_before);
    for (size_t i = 0; ok && i < w.count; i++) ok = model_state_put(NULL, m, o, w.tensor[i].name, e);
    safetensors_abort(&w);
    model_zero_grads(m);
    return ok;
}

/* Announces the adapters. Returns their list, which the caller frees, sorted by name. */
static inline PeftTensor *model_state_plan_adapters(SafetensorsWriter *w, const Model *m, size_t *count) {
    char name[MODEL_STATE_NAME];
    PeftTensor *list = peft_tensors(&m->config, count);
    for (size_t i = 0; i < *count; i++) {
        snprintf(name, sizeof name, MODEL_STATE_ADAPTER "%s", list[i].name);
        safetensors_add(w, name, SAFETENSORS_F32, 2, (const uint64_t[]){list[i].rows, list[i].columns});
    }
    return list;
}

/* Writes the adapter of this name. */
static inline bool model_state_put_adapter(SafetensorsWriter *w, const Model *m, const PeftTensor *list, size_t count,
                                           const char *name, Error *e) {
    PeftTensor key;
    snprintf(key.name, sizeof key.name, "%s", name + strlen(MODEL_STATE_ADAPTER));
    const PeftTensor *p = (const PeftTensor *)bsearch(&key, list, count, sizeof *list, peft_by_name);
    const size_t n = p->rows * p->columns;
    float *host = (float *)xmalloc(n * sizeof *host);
    model_download(m, p->at, host, n);
    const bool ok = safetensors_put_floats(w, name, SAFETENSORS_F32, host, n, e);
    free(host);
    return ok;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* Returns the F32 tensor of a name and shape, or NULL. */
static inline const SafeTensor *model_state_tensor(const Safetensors *s, const char *name, int dims,
                                                   const uint64_t *shape, Error *e) {
    const SafeTensor *t = safetensors_find(s, name);
    if (!t) error_set(e, "%s: has no tensor %s, which the state of this model needs", s->name, name);
    else if (t->type != SAFETENSORS_F32 || t->dims != dims || memcmp(t->shape, shape, (size_t)dims * sizeof *shape)) {
        error_set(e, "%s: tensor %s has another type or shape than the state of this model", s->name, name);
        t = NULL;
    }
    return t;
}

/* Checks that the file has no moments of tensors that the model does not train. */
static inline bool model_state_check(const Safetensors *s, const Model *m, Error *e) {
    int k, i;
    for (size_t n = 0; n < s->count; n++) {
        const char *name = s->tensor[n].name;
        if (strncmp(name, MODEL_STATE_OPTIMIZER, strlen(MODEL_STATE_OPTIMIZER)) || model_state_find(m, name, &k, &i))
            continue;
        return error_set(e, "%s: has optimizer moments of %.100s, which this model does not train", s->name,
                         name + strlen(MODEL_STATE_OPTIMIZER));
    }
    return true;
}

/* Reads the optimizer's arrays, of which this rank keeps its slices. The masters of a device that has none become its
 * weights. A file without masters leaves those of the device as the weights are. */
static inline bool model_state_read(const Safetensors *s, const Model *m, const Optimizer *o, Error *e) {
    char name[MODEL_STATE_NAME];
    if (!model_state_check(s, m, e)) return false;
    for (int k = 0; k < MODEL_STATE_ARRAYS; k++)
        for (int i = 0; i < TENSOR_COUNT; i++) {
            const TensorInfo *t = &m->tensor[i];
            Floats *to = model_state_array(o, k);
            if (!tensor_trained(t)) continue;
            model_state_name(name, k, t);
            if (k == 2 && !safetensors_find(s, name)) continue;
            const SafeTensor *from =
                model_state_tensor(s, name, 3, (const uint64_t[]){t->layers, t->rows, t->columns}, e);
            if (!from) return false;
            for (ModelChunk c = {0}; model_each_chunk(&c, t->size);) {
                safetensors_floats(from, c.at, c.host, c.n);
                if (!weights_finite(c.host, c.n)) {
                    free(c.host);
                    return error_set(e, "%s: tensor %s has a value that is NaN or infinite", s->name, name);
                }
                if (to) model_put_slices(m, o, to, t->offset + c.at, c.host, c.n);
                else model_upload(m, t->offset + c.at, c.host, c.n);
            }
        }
    return true;
}

/* Reads the adapters of a model that has adapters of this configuration. */
static inline bool model_state_read_adapters(const Safetensors *s, const Model *m, const Optimizer *o, Error *e) {
    char name[MODEL_STATE_NAME];
    size_t count;
    bool ok = true;
    PeftTensor *list = peft_tensors(&m->config, &count);
    for (size_t i = 0; ok && i < count; i++) {
        const size_t n = list[i].rows * list[i].columns;
        snprintf(name, sizeof name, MODEL_STATE_ADAPTER "%s", list[i].name);
        const SafeTensor *t = model_state_tensor(s, name, 2, (const uint64_t[]){list[i].rows, list[i].columns}, e);
        if (!(ok = t != NULL)) break;
        float *host = (float *)xmalloc(n * sizeof *host);
        safetensors_floats(t, 0, host, n);
        ok =
            weights_finite(host, n) || error_set(e, "%s: tensor %s has a value that is NaN or infinite", s->name, name);
        if (ok) model_put_weights(m, o, list[i].at, host, n);
        free(host);
    }
    free(list);
    return ok;
}

#endif
