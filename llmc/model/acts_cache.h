/* acts_cache.h - the activations of rows that were computed while decoding, for the training pass over these rows.
 *
 * While completions are sampled, the policy's layers run over every token but the last. If the weights have not changed
 * when the policy is trained on the completions, the training pass would compute the same activations again, up to the
 * rounding of products of other numbers of rows. The cache has them instead: model_decode() writes the rows of each call,
 * and model_forward() reads those of its batch in the place of the layers, a quarter of a step's arithmetic.
 *
 * A cached row has what the backward pass reads at the workspace's level of recomputation, but at least 1: norms and
 * activation functions are computed again. Memory of the host only, so for backends whose device memory is that.
 *
 *     ActivationCache cache;
 *     Workspace decode;                                                     // of RECOMPUTE_CACHED
 *     int32_t row[256];                                                     // the row in the cache of each row of a batch
 *     if (!activation_cache_new(&cache, &model, 1, rows, &e)) die("%s", e.text);
 *     decode.cache = &cache, decode.cache_row = row;                        // for model_decode()
 *     const Workspace cached = activation_cache_work(&work, &cache, row);
 *     model_forward(&model, &cached, &batch, 1.0f, &out);                   // transformer.h
 *     model_backward(&model, &cached, &batch, 1.0f, dlogp, NULL, NULL);
 *     activation_cache_free(&cache, &model);
 */
#ifndef LLMC_MODEL_ACTS_CACHE_H
#define LLMC_MODEL_ACTS_CACHE_H

#include "../base/error.h" /* Error */
#include "backend.h"       /* Backend */
#include "config.h"        /* ModelConfig */
#include "model.h"         /* Model */
#include "workspace.h"     /* Workspace, WORK_COUNT, WORK_act, WORK_ln1, ... */
#include <assert.h>
#include <string.h>

typedef struct ActivationCache {
    int64_t rows;            /* capacity */
    size_t row;              /* bytes of a row in one layer */
    int items;               /* kept ones */
    int item[WORK_COUNT];    /* (items) their numbers in the table of workspace.h */
    size_t size[WORK_COUNT]; /* (items) bytes of each in a row, in the order in which a row holds them */
    char *memory;            /* (L, rows, row) */
} ActivationCache;

/* Sets what a row has; returns the bytes of a row in all layers. recompute: of the training workspace. */
static inline size_t activation_cache_layout(ActivationCache *k, const ModelConfig *c, const Backend *b,
                                             int recompute) {
    Workspace w = {.rows = 1, .targets = 1, .segments = 1, .train = true, .recompute = recompute > 1 ? recompute : 1};
    workspace_layout(&w, c, b);
    *k = (ActivationCache){0};
    for (int i = 0; i < WORK_COUNT; i++) {
        const bool again = i == WORK_mean1 || i == WORK_rstd1 || i == WORK_mean2 || i == WORK_rstd2; /* with the norm */
        if (!w.stride[i] || again) continue;
        k->item[k->items] = i;
        k->size[k->items++] = w.each[i];
        k->row += w.each[i];
    }
    k->row = (k->row + 63) / 64 * 64;
    return k->row * (size_t)c->layers;
}

/* Bytes that activation_cache_new() allocates. */
static inline size_t activation_cache_bytes(const ModelConfig *c, const Backend *b, int recompute, int64_t rows) {
    ActivationCache k;
    return activation_cache_layout(&k, c, b, recompute) * (size_t)rows;
}

/* rows: capacity. Pages of rows that are never written take no memory. */
static inline bool activation_cache_new(ActivationCache *k, const Model *m, int recompute, int64_t rows, Error *e) {
    const size_t each = activation_cache_layout(k, &m->config, m->backend, recompute);
    k->rows = rows;
    k->memory = (char *)m->backend->alloc_zeroed(m->device, each * (size_t)rows, "activation cache", e);
    return k->memory != NULL;
}

static inline void activation_cache_free(ActivationCache *k, const Model *m) {
    if (k->memory) m->backend->release(m->device, k->memory);
    *k = (ActivationCache){0};
}

/* Copies layer `layer` of the workspace's first N rows into the cache, or, with `read`, from it. */
static inline void activation_cache_copy(const ActivationCache *k, const Workspace *w, int layer, int N, bool read) {
#pragma omp parallel for schedule(static)
    for (int i = 0; i < N; i++) {
        if (w->cache_row[i] < 0) continue;
        assert(w->cache_row[i] < k->rows);
        char *row = k->memory + ((size_t)layer * (size_t)k->rows + (size_t)w->cache_row[i]) * k->row;
        for (int n = 0; n < k->items; row += k->size[n++]) {
            char *x = (char *)work_item(w, k->item[n], layer) + (size_t)i * k->size[n];
            if (read) memcpy(x, row, k->size[n]);
            else memcpy(row, x, k->size[n]);
        }
    }
}

/* The workspace w for a training pass whose rows are all in the cache. What is computed again anyway takes the place of
 * one layer. */
static inline Workspace activation_cache_work(const Workspace *w, ActivationCache *k, const int32_t *row) {
    Workspace cached = *w;
    cached.cache = k;
    cached.cache_row = row;
    if (w->recompute) return cached;
    cached.recompute = 1;
    cached.stride[WORK_ln1] = cached.stride[WORK_ln2] = cached.stride[WORK_act] = 0;
    return cached;
}

#endif
