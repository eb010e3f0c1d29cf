/* workspace.h - the activations of one batch, and the cache of keys and values for decoding.
 *
 * A Workspace holds the activations of one batch in one allocation, whose size workspace_bytes() predicts. In training,
 * recompute trades time for memory: 0 keeps all activations, 1 recomputes the outputs of norms and activations, and 2
 * recomputes whole layers from their inputs. A Workspace for inference keeps the activations of one layer only. One of
 * RECOMPUTE_CACHED is for inference whose activations go into an ActivationCache (acts_cache.h), layer by layer: it has
 * what a training pass computes, of one layer only.
 *
 *     Workspace w;
 *     if (!workspace_new(&w, &model, rows, targets, segments, true, 0, &e)) return false;
 *     Acts *n1 = work_acts(&w, WORK_ln1, layer);
 *     workspace_free(&w, &model);
 */
#ifndef LLMC_MODEL_WORKSPACE_H
#define LLMC_MODEL_WORKSPACE_H

#include "../base/error.h" /* Error */
#include "backend.h"       /* Acts, Backend, ROW_ALIGN, Floats, ... */
#include "config.h"        /* dora_outer, lora_inner, ModelConfig, model_means, ... */
#include "model.h"         /* Model */

typedef enum { SIZE_ACTS, SIZE_FLOATS, SIZE_INTS } SizeKind;
/* The activations. An item has `items` elements of its kind per row, target or segment of the batch (`of`). In training
 * each layer has its own copy at recompute levels up to `kept`; otherwise all layers share one. */
// clang-format off
/*    name        kind          items                    of        kept when */
#define WORKSPACE_ITEMS(A, c)                                                  \
    A(token,      SIZE_INTS,    1,                       rows,     -1, ALWAYS) \
    A(position,   SIZE_INTS,    1,                       rows,     -1, ALWAYS) \
    A(rotation,   SIZE_FLOATS,  model_rotation(c),       rows,     -1, ALWAYS) \
    A(noise,      SIZE_FLOATS,  1,                       rows,     -1, TRAIN)  \
    A(noise_record, SIZE_INTS,  1,                       rows,     -1, TRAIN)  \
    A(slot,       SIZE_INTS,    1,                       rows,     -1, INFER)  \
    A(segment,    SIZE_INTS,    6,                       segments, -1, ALWAYS) \
    A(encoded,    SIZE_ACTS,    (c)->width,              rows,     -1, ALWAYS) \
    A(ln1,        SIZE_ACTS,    model_pre_norm(c),       rows,     0,  ALWAYS) \
    A(mean1,      SIZE_FLOATS,  model_means(c),          rows,     1,  ALWAYS) \
    A(rstd1,      SIZE_FLOATS,  1,                       rows,     1,  ALWAYS) \
    A(qkv,        SIZE_ACTS,    model_qkv_width(c),      rows,     1,  ALWAYS) \
    A(qk,         SIZE_ACTS,    model_qk_norm_width(c),  rows,     1,  TRAIN)  \
    A(qk_rstd,    SIZE_FLOATS,  model_qk_norm_groups(c), rows,     1,  TRAIN)  \
    A(atty,       SIZE_ACTS,    model_q_width(c),        rows,     1,  ALWAYS) \
    A(lse,        SIZE_FLOATS,  (c)->heads,              rows,     1,  TRAIN)  \
    A(att,        SIZE_ACTS,    model_post_norm(c),      rows,     1,  TRAIN)  \
    A(rstd_att,   SIZE_FLOATS,  model_post_norms(c),     rows,     1,  ALWAYS) \
    A(x2,         SIZE_ACTS,    (c)->width,              rows,     1,  TRAIN)  \
    A(ln2,        SIZE_ACTS,    model_pre_norm(c),       rows,     0,  ALWAYS) \
    A(mean2,      SIZE_FLOATS,  model_means(c),          rows,     1,  ALWAYS) \
    A(rstd2,      SIZE_FLOATS,  1,                       rows,     1,  ALWAYS) \
    A(fch,        SIZE_ACTS,    model_fc_width(c),       rows,     1,  ALWAYS) \
    A(act,        SIZE_ACTS,    (c)->hidden,             rows,     0,  ALWAYS) \
    A(mlp,        SIZE_ACTS,    model_post_norm(c),      rows,     1,  TRAIN)  \
    A(rstd_mlp,   SIZE_FLOATS,  model_post_norms(c),     rows,     2,  ALWAYS) \
    A(x3,         SIZE_ACTS,    (c)->width,              rows,     2,  TRAIN)  \
    A(delta,      SIZE_ACTS,    (c)->width,              rows,     -1, ALWAYS) \
    A(qkvl,       SIZE_ACTS,    lora_inner(c, LORA_OF_QKV),     rows, 1, ALWAYS) \
    A(attl,       SIZE_ACTS,    lora_inner(c, LORA_OF_ATTPROJ), rows, 1, ALWAYS) \
    A(fcl,        SIZE_ACTS,    lora_inner(c, LORA_OF_FC),      rows, 1, ALWAYS) \
    A(fcprojl,    SIZE_ACTS,    lora_inner(c, LORA_OF_FCPROJ),  rows, 2, ALWAYS) \
    A(qkvu,       SIZE_ACTS,    dora_outer(c, LORA_OF_QKV),     rows, 1, TRAIN) \
    A(attu,       SIZE_ACTS,    dora_outer(c, LORA_OF_ATTPROJ), rows, 1, TRAIN) \
    A(fcu,        SIZE_ACTS,    dora_outer(c, LORA_OF_FC),      rows, 1, TRAIN) \
    A(fcproju,    SIZE_ACTS,    dora_outer(c, LORA_OF_FCPROJ),  rows, 2, TRAIN) \
    A(lnf,        SIZE_ACTS,    (c)->width,              rows,     -1, ALWAYS) \
    A(meanf,      SIZE_FLOATS,  model_means(c),          rows,     -1, ALWAYS) \
    A(rstdf,      SIZE_FLOATS,  1,                       rows,     -1, ALWAYS) \
    A(target_row, SIZE_INTS,    1,                       targets,  -1, ALWAYS) \
    A(target,     SIZE_INTS,    1,                       targets,  -1, ALWAYS) \
    A(h,          SIZE_ACTS,    (c)->width,              targets,  -1, ALWAYS) \
    A(logp,       SIZE_FLOATS,  1,                       targets,  -1, ALWAYS) \
    A(entropy,    SIZE_FLOATS,  1,                       targets,  -1, ALWAYS) \
    A(argmax,     SIZE_INTS,    1,                       targets,  -1, ALWAYS) \
    A(value,      SIZE_FLOATS,  1,                       targets,  -1, ALWAYS) \
    A(stream,     SIZE_INTS,    2,                       targets,  -1, INFER)  \
    A(index,      SIZE_INTS,    1,                       targets,  -1, INFER)  \
    A(seen_count, SIZE_INTS,    1,                       targets,  -1, INFER)  \
    A(divergence, SIZE_FLOATS,  4,                       targets,  -1, INFER)  \
    A(dlogp,      SIZE_FLOATS,  1,                       targets,  -1, TRAIN)  \
    A(dentropy,   SIZE_FLOATS,  1,                       targets,  -1, TRAIN)  \
    A(dvalue,     SIZE_FLOATS,  1,                       targets,  -1, TRAIN)  \
    A(dh,         SIZE_ACTS,    (c)->width,              targets,  -1, TRAIN)  \
    A(dx,         SIZE_ACTS,    (c)->width,              rows,     -1, TRAIN)  \
    A(dbranch,    SIZE_ACTS,    model_post_norm(c),      rows,     -1, TRAIN)  \
    A(dnarrow,    SIZE_ACTS,    model_narrow(c),         rows,     -1, TRAIN)  \
    A(dact,       SIZE_ACTS,    model_dact(c),           rows,     -1, TRAIN)  \
    A(dwide,      SIZE_ACTS,    model_widest(c),         rows,     -1, TRAIN) \
    A(dscaled,    SIZE_ACTS,    dora_widest(c),          rows,     -1, TRAIN)
// clang-format on

enum {
#define A(name, kind, items, of, kept, when) WORK_##name,
    WORKSPACE_ITEMS(A, )
#undef A
        WORK_COUNT
};

enum { RECOMPUTE_CACHED = 3 }; /* a level of recomputation: see the head of this page */

typedef struct Workspace {
    int rows, targets, segments; /* capacities */
    bool train;
    int recompute;
    void *arena;
    size_t bytes;
    size_t offset[WORK_COUNT], stride[WORK_COUNT]; /* bytes; stride: between layers, 0 if all layers share one */
    size_t each[WORK_COUNT];                       /* bytes of one row, target or segment in one layer */
    /* The cache of the batch's activations, or NULL: row i is cache_row[i] there, -1: it is not in it. A pass that decodes
     * writes it, any other pass reads it instead of running the layers. */
    struct ActivationCache *cache;
    const int32_t *cache_row;
    /* NEFTune: noise_scale[N] on the host, or NULL for no noise; noise_record[N]: which record of the step a row is
     * of; noise_stream identifies the step */
    const float *noise_scale;
    const int32_t *noise_record;
    uint64_t noise_seed, noise_stream;
} Workspace;

/* Fills in sizes and offsets; returns the size of the arena in bytes. */
static inline size_t workspace_layout(Workspace *w, const ModelConfig *c, const Backend *b) {
    enum { ALWAYS, TRAIN, INFER };
    const size_t unit[] = {b->act_size, sizeof(float), sizeof(int32_t)};
    const bool cached = w->recompute == RECOMPUTE_CACHED;
    size_t at = 0;
    int i = 0;
    if (w->recompute < (int)b->recompute) w->recompute = (int)b->recompute;
#define A(name, kind, items, of, kept, when)                                                                           \
    {                                                                                                                  \
        const size_t count = ((size_t)w->of + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN;                                  \
        const bool present =                                                                                           \
            (when) == ALWAYS || ((when) == TRAIN ? w->train && ((kept) >= 0 || !cached) : !w->train || cached);        \
        const bool stacked = w->train && (kept) >= w->recompute;                                                       \
        const size_t bytes = (count * (size_t)(items)*unit[kind] + 63) / 64 * 64;                                      \
        w->offset[i] = at;                                                                                             \
        w->stride[i] = stacked ? bytes : 0;                                                                            \
        w->each[i] = present ? (size_t)(items)*unit[kind] : 0;                                                         \
        at += present ? bytes * (stacked ? (size_t)c->layers : 1) : 0;                                                 \
        i++;                                                                                                           \
    }
    WORKSPACE_ITEMS(A, c)
#undef A
    return w->bytes = at;
}

/* Bytes that workspace_new() would allocate. */
static inline size_t workspace_bytes(const ModelConfig *c, const Backend *b, int rows, int targets, int segments,
                                     bool train, int recompute) {
    Workspace w = {.rows = rows, .targets = targets, .segments = segments, .train = train, .recompute = recompute};
    return workspace_layout(&w, c, b);
}

/* rows, targets, segments: capacities, the sizes of the largest batch. recompute: 0, 1 or 2 (training only), or
 * RECOMPUTE_CACHED, with `train`. */
static inline bool workspace_new(Workspace *w, const Model *m, int rows, int targets, int segments, bool train,
                                 int recompute, Error *e) {
    *w = (Workspace){.rows = rows, .targets = targets, .segments = segments, .train = train, .recompute = recompute};
    workspace_layout(w, &m->config, m->backend);
    w->arena = m->backend->alloc_zeroed(m->device, w->bytes, "activations", e);
    return w->arena != NULL;
}

static inline void workspace_free(Workspace *w, const Model *m) {
    if (w->arena) m->backend->release(m->device, w->arena);
    *w = (Workspace){0};
}

/* Returns one layer of an item of the table. item: WORK_ and its name. Typed: work_acts(), work_floats(),
 * work_ints(). */
static inline void *work_item(const Workspace *w, int item, int layer) {
    return (char *)w->arena + w->offset[item] + w->stride[item] * (size_t)layer;
}
static inline Acts *work_acts(const Workspace *w, int item, int layer) { return (Acts *)work_item(w, item, layer); }
static inline Floats *work_floats(const Workspace *w, int item, int layer) {
    return (Floats *)work_item(w, item, layer);
}
static inline Ints *work_ints(const Workspace *w, int item) { return (Ints *)work_item(w, item, 0); }

/* The residual stream after attention and after the MLP. Inference uses one buffer for both. */
static inline Acts *work_x2(const Workspace *w, int l) {
    return w->train ? work_acts(w, WORK_x2, l) : work_acts(w, WORK_encoded, 0);
}
static inline Acts *work_x3(const Workspace *w, int l) {
    return l < 0 || !w->train ? work_acts(w, WORK_encoded, 0) : work_acts(w, WORK_x3, l);
}

/* ---- key/value cache ------------------------------------------------------------------------------------------- */

/* Keys and values of earlier tokens: `rows` cache rows per layer. */
typedef struct KVCache {
    int rows;
    Acts *k, *v; /* (L, rows, model_kv_width()) */
} KVCache;

static inline size_t kv_bytes(const ModelConfig *c, const Backend *b, int rows) {
    return 2 * (size_t)c->layers * (size_t)rows * (size_t)model_kv_width(c) * b->act_size;
}

static inline bool kv_new(KVCache *kv, const Model *m, int rows, Error *e) {
    const size_t half = kv_bytes(&m->config, m->backend, rows) / 2;
    kv->rows = rows;
    kv->k = (Acts *)m->backend->alloc_zeroed(m->device, 2 * half, "key/value cache", e);
    kv->v = kv->k ? (Acts *)((char *)kv->k + half) : NULL;
    return kv->k != NULL;
}

static inline void kv_free(KVCache *kv, const Model *m) {
    if (kv->k) m->backend->release(m->device, kv->k);
    *kv = (KVCache){0};
}

#endif
