/* model.h - a model: its configuration, weights and gradients on a device.
 *
 *     Model m;
 *     if (!model_new(&m, &config, backend, device, true, &e)) return false;     // with gradients
 *     model_init(&m, seed);
 *     const Weights *w = model_weight(&m, TENSOR_qkvw, layer);
 *     model_free(&m);
 *
 * Host code here never dereferences a device pointer. Device errors are sticky; model_sync() reports them.
 */
#ifndef LLMC_MODEL_MODEL_H
#define LLMC_MODEL_MODEL_H

#include "../base/error.h"  /* Error, xmalloc */
#include "../base/random.h" /* RANDOM_INIT, Random, random_normal, random_real, ... */
#include "backend.h"        /* Floats, weights_at, Backend, Weights, ... */
#include "config.h"         /* ModelConfig, model_rotation, MODEL_HEAD_MAX, Rope */
#include "rotary.h"         /* rope_frequencies */
#include "share.h"          /* Share */
#include "tensors.h"        /* TENSOR_COUNT, TensorInfo, TENSOR_wte, TENSOR_headw, ... */
#include <assert.h>

typedef struct Model {
    ModelConfig config;
    const Backend *backend;
    Device *device; /* owned by the caller */
    TensorInfo tensor[TENSOR_COUNT];
    size_t parameters; /* elements of all tensors; one block in the order of the table */
    Weights *weights;
    Floats *grads;      /* NULL if the model is not trained */
    size_t grads_count; /* floats in grads: `parameters`, or fewer with zero 2 */
    size_t grads_offset[TENSOR_COUNT];
    /* Rotary positions (rotary.h): the frequencies of config.rope, then those of config.local_rope, on the device, and the
     * factors of their cosines and sines. NULL: learned positions. */
    Floats *frequency;
    float rotary_factor[2];
    /* Several ranks (dist.h). With zero 2 the gradients of only grads_layers layers are kept at a time, those of layer
     * l in slot l % grads_layers. A backward pass calls layer_done as soon as all gradients of a layer are complete,
     * and at its end with layer -1. */
    Share share;
    int grads_layers;
    void (*layer_done)(void *context, int layer);
    void *layer_context;
    bool adapter_off; /* computes without the adapters */
} Model;

/* Bytes of the frequencies of rotary positions. */
static inline size_t model_rotary_bytes(const ModelConfig *c) { return (size_t)model_rotation(c) / 2 * sizeof(float); }

static inline size_t model_bytes(const ModelConfig *c, const Backend *b, bool gradients) {
    TensorInfo t[TENSOR_COUNT];
    return model_tensors(c, t) * (b->weight_size + (gradients ? sizeof(float) : 0)) + model_rotary_bytes(c);
}

enum { MODEL_GRADS_LAYERS = 2 }; /* zero 2: one layer is computed while the previous one is summed over the ranks */

/* Sets the offset of each tensor's gradients and the number of layers kept. Returns the number of floats. */
static inline size_t model_grads_layout(const ModelConfig *c, Share share, size_t offset[TENSOR_COUNT], int *layers) {
    TensorInfo t[TENSOR_COUNT];
    size_t at = 0;
    model_tensors(c, t);
    *layers = share.ranks > 1 && share.zero == 2 && c->layers > MODEL_GRADS_LAYERS ? MODEL_GRADS_LAYERS : c->layers;
    for (int i = 0; i < TENSOR_COUNT; i++) {
        offset[i] = at;
        if (!tensor_trained(&t[i])) continue;
        at += t[i].layers > (size_t)*layers ? t[i].rows * t[i].columns * (size_t)*layers : t[i].size;
    }
    return at;
}

/* Allocates zeroed gradients for a model that will be trained, according to m->share. */
static inline bool model_new_grads(Model *m, Error *e) {
    m->grads_count = model_grads_layout(&m->config, m->share, m->grads_offset, &m->grads_layers);
    const size_t bytes = m->grads_count * sizeof(float);
    m->grads = (Floats *)m->backend->alloc(m->device, bytes, "gradients", e);
    if (m->grads) m->backend->zero(m->device, m->grads, bytes);
    return m->grads != NULL;
}

/* Allocates the frequencies of rotary positions. */
static inline bool model_new_rotary(Model *m, Error *e) {
    const ModelConfig *c = &m->config;
    const Rope *rope[2] = {&c->rope, &c->local_rope};
    const size_t half = (size_t)c->rotary / 2;
    float frequency[MODEL_HEAD_MAX];
    if (!model_rotation(c)) return true;
    m->frequency = (Floats *)m->backend->alloc(m->device, model_rotary_bytes(c), "rotary frequencies", e);
    if (!m->frequency) return false;
    for (int i = 0; i < model_rotation(c) / c->rotary; i++)
        m->rotary_factor[i] = rope_frequencies(rope[i], c->rotary, c->context, frequency + (size_t)i * half);
    m->backend->upload(m->device, m->frequency, frequency, model_rotary_bytes(c));
    return true;
}

/* Allocates a model of the given shape. Its weights are uninitialised. */
static inline bool model_new(Model *m, const ModelConfig *c, const Backend *b, Device *d, bool gradients, Error *e) {
    *m = (Model){.config = *c, .backend = b, .device = d};
    m->parameters = model_tensors(c, m->tensor);
    m->weights = (Weights *)b->alloc(d, m->parameters * b->weight_size, "weights", e);
    return m->weights && model_new_rotary(m, e) && (!gradients || model_new_grads(m, e));
}

static inline void model_free(Model *m) {
    if (m->weights) m->backend->weights_release(m->device, m->weights, m->parameters);
    if (m->grads) m->backend->release(m->device, m->grads);
    if (m->frequency) m->backend->release(m->device, m->frequency);
    *m = (Model){0};
}

/* Initial values of one tensor, into host[t->size]: N(0, 0.02); residual projections are scaled by 1/sqrt(2L) (GPT-2,
 * section 2.3); the value head is N(0, 1/(C+1)) (Stiennon et al. 2020); weights of norms are 1 (0 if 1 is
 * added to them), biases 0 and the padding rows of wte and headw 0. An adapter's a is uniform in +-1/sqrt(columns) and
 * its b is 0 (peft, tuners/lora/layer.py, reset_lora_parameters). */
static inline void model_init_tensor(const ModelConfig *c, int tensor, const TensorInfo *t, uint64_t seed,
                                     float *host) {
    const double deviation = t->init == INIT_RESIDUAL ? 0.02 / sqrt(2.0 * c->layers)
                             : t->init == INIT_HEAD   ? 1.0 / sqrt(c->width + 1.0)
                                                      : 0.02;
    const double bound = 1.0 / sqrt((double)t->columns); /* of adapters */
    Random random = random_start(seed, RANDOM_INIT + t->stream);
    const bool rows_of_tokens = tensor == TENSOR_wte || tensor == TENSOR_headw;
    const size_t drawn = rows_of_tokens ? (size_t)c->vocab * (size_t)c->width : t->size;
    for (size_t i = 0; i < t->size; i++)
        host[i] = t->init == INIT_ZERO || i >= drawn ? 0.0f
                  : t->init == INIT_ONE              ? 1.0f - (float)c->norm_plus_one
                  : t->init == INIT_LORA             ? (float)(bound * (2 * random_real(&random) - 1))
                                                     : (float)(deviation * random_normal(&random));
}

/* Initialises the weights of a new model from a seed. */
static inline void model_init(Model *m, uint64_t seed) {
    size_t largest = 0;
    for (int i = 0; i < TENSOR_COUNT; i++)
        if (m->tensor[i].size > largest) largest = m->tensor[i].size;
    float *host = (float *)xmalloc(largest * sizeof *host);
    for (int i = 0; i < TENSOR_COUNT; i++) {
        const TensorInfo *t = &m->tensor[i];
        if (!t->size) continue;
        model_init_tensor(&m->config, i, t, seed, host);
        m->backend->weights_upload(m->device, weights_at(m->backend, m->weights, t->offset), host, t->size);
    }
    free(host);
}

/* The tensor of the output matrix. */
static inline int model_output_tensor(const ModelConfig *c) { return c->tied ? TENSOR_wte : TENSOR_headw; }

/* Adds the tokens [V, vocab), which use the padding rows of the embeddings and of the output matrix: vocab <= Vp. */
static inline void model_grow_vocab(Model *m, int32_t vocab, uint64_t seed) {
    ModelConfig c = m->config;
    const int tensor[] = {TENSOR_wte, TENSOR_headw};
    const size_t first = (size_t)c.vocab * (size_t)c.width, last = (size_t)vocab * (size_t)c.width;
    float *host = (float *)xmalloc(m->tensor[TENSOR_wte].size * sizeof *host);
    assert(vocab >= c.vocab && vocab <= c.padded_vocab);
    c.vocab = vocab;
    for (int i = 0; i < (c.tied ? 1 : 2); i++) {
        const TensorInfo *t = &m->tensor[tensor[i]];
        model_init_tensor(&c, tensor[i], t, seed, host);
        m->backend->weights_upload(m->device, weights_at(m->backend, m->weights, t->offset + first), host + first,
                                   last - first);
    }
    m->config.vocab = vocab;
    free(host);
}

/* ---- copies through the host ----------------------------------------------------------------------------------- */

/* Copies weights [at, at + n) from the device to host[n], or from host[n] to the device, as float32. */
static inline void model_download(const Model *m, size_t at, float *host, size_t n) {
    m->backend->weights_download(m->device, host, weights_at(m->backend, m->weights, at), n);
}
static inline void model_upload(const Model *m, size_t at, const float *host, size_t n) {
    m->backend->weights_upload(m->device, weights_at(m->backend, m->weights, at), host, n);
}

enum { MODEL_CHUNK = 1 << 20 }; /* elements copied through the host at a time */

/* A part of an array over all parameters: elements at ... at+n-1, with a host buffer host[n]. */
typedef struct ModelChunk {
    size_t at, n;
    float *host;
} ModelChunk;

/* Advances to the next chunk of an array of `count` elements. Returns false after the last one and frees c->host; a
 * loop that ends earlier frees it itself, which is also allowed after the end.
 *
 *     ModelChunk c = {0};
 *     while (ok && model_each_chunk(&c, m->parameters)) {
 *         model_download(m, c.at, c.host, c.n);
 *         ok = checkpoint_put_weights(&w, c.host, c.n, e);
 *     }
 *     free(c.host);
 */
static inline bool model_each_chunk(ModelChunk *c, size_t count) {
    c->at += c->n;
    c->n = count - c->at < MODEL_CHUNK ? count - c->at : MODEL_CHUNK;
    if (!c->n) {
        free(c->host);
        c->host = NULL;
    } else if (!c->host) c->host = (float *)xmalloc(MODEL_CHUNK * sizeof *c->host);
    return c->n != 0;
}

/* Copies a model without gradients, to serve as a reference. */
static inline bool model_copy(Model *to, const Model *from, Error *e) {
    if (!model_new(to, &from->config, from->backend, from->device, false, e)) return false;
    for (ModelChunk c = {0}; model_each_chunk(&c, from->parameters);) {
        model_download(from, c.at, c.host, c.n);
        model_upload(to, c.at, c.host, c.n);
    }
    return true;
}

static inline void model_zero_grads(const Model *m) {
    m->backend->zero(m->device, m->grads, m->grads_count * sizeof(float));
}

static inline bool model_sync(const Model *m, Error *e) { return m->backend->sync(m->device, e); }

/* Weights and gradients of layer l of tensor i. Gradients are NULL if the tensor is not trained. */
static inline const Weights *model_weight(const Model *m, int i, int l) {
    const TensorInfo *t = &m->tensor[i];
    return weights_at(m->backend, m->weights, t->offset + (size_t)l * t->rows * t->columns);
}
static inline Floats *model_grad(const Model *m, int i, int l) {
    const TensorInfo *t = &m->tensor[i];
    if (!m->grads || !tensor_trained(t)) return NULL;
    return floats_at(m->grads, m->grads_offset[i] + (size_t)(l % m->grads_layers) * t->rows * t->columns);
}

#endif
