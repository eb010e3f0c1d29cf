/* model.h - a model: its configuration, weights and gradients on a device.
 *
 *     Model m;
 *     if (!model_new(&m, &config, backend, device, true, &e)) return false;     // with gradients
 *     model_init(&m, seed);
 *     const Weights *w = model_weight(&m, TENSOR_qkvw, layer);
 *     model_free(&m);
 *
 * The matrices of linear layers, the token embeddings and the output matrix can be quantised if they are not trained: they are
 * then stored in blocks (quantized.h), and all other tensors as usual. The elements of all tensors keep their numbers, under
 * which model_download() returns the values of blocks and model_upload() quantises.
 *
 * Host code here never dereferences a device pointer. Device errors are sticky; model_sync() reports them.
 */
#ifndef LLMC_MODEL_MODEL_H
#define LLMC_MODEL_MODEL_H

#include "../base/error.h"  /* Error, xcalloc, xmalloc, error_set */
#include "../base/random.h" /* RANDOM_INIT, Random, random_normals, random_real, ... */
#include "backend.h"        /* QuantMatrix, Floats, QuantType, Blocks, ... */
#include "config.h"         /* ModelConfig, model_rotation, MODEL_HEAD_MAX, Rope */
#include "quantized.h"      /* quant_info, quant_bytes, quant_decode, quant_encode, ... */
#include "rotary.h"         /* rope_frequencies, rope_has_lists */
#include "share.h"          /* Share */
#include "tensors.h"        /* TENSOR_COUNT, TensorInfo, MATRIX_COUNT, matrix_tensor, ... */
#include <assert.h>

/* The lengths of DoRA's rows. They belong to the weights: `fresh` is false after any of these changed, and the next forward
 * pass computes them (transformer.h). */
typedef struct DoraNorms {
    Floats *norm; /* as many as the magnitudes, in their order */
    bool fresh;
} DoraNorms;

typedef struct Model {
    ModelConfig config;
    const Backend *backend;
    Device *device; /* owned by the caller */
    TensorInfo tensor[TENSOR_COUNT];
    size_t parameters; /* elements of all tensors; one block in the order of the table */
    Weights *weights;
    size_t stored;       /* elements of `weights`: `parameters`, without those of quantised matrices */
    QuantMatrix *matrix; /* (MATRIX_COUNT, L) the quantised matrices; without parts: stored as weights; NULL: none */
    Blocks *blocks;      /* their memory */
    size_t block_bytes;
    void *mapping; /* the mapped files of mapped blocks, or NULL */
    size_t mapped_bytes;
    void (*unmap)(void *mapping);
    DoraNorms *dora;    /* NULL without DoRA */
    bool borrowed;      /* the blocks belong to another model */
    Floats *grads;      /* NULL if the model is not trained */
    size_t grads_count; /* floats in grads: `parameters`, or fewer with zero 2 */
    size_t grads_offset[TENSOR_COUNT];
    bool *grads_forgotten; /* (TENSOR_COUNT, L) gradients that count as 0, whatever their memory holds */
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

/* Bytes of the lengths of DoRA's rows. */
static inline size_t model_dora_bytes(const ModelConfig *c) {
    TensorInfo t[TENSOR_COUNT];
    return (model_tensors(c, t) - t[FIRST_DORA_TENSOR].offset) * sizeof(float);
}

static inline size_t model_bytes(const ModelConfig *c, const Backend *b, bool gradients) {
    TensorInfo t[TENSOR_COUNT];
    return model_tensors(c, t) * (b->weight_size + (gradients ? sizeof(float) : 0)) + model_rotary_bytes(c) +
           model_dora_bytes(c);
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
    m->grads_forgotten = (bool *)xcalloc((size_t)(TENSOR_COUNT * m->config.layers), sizeof *m->grads_forgotten);
    m->grads = (Floats *)m->backend->alloc_zeroed(m->device, bytes, "gradients", e);
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

/* Sets the length of the run's longest sequence, which selects the list of longrope (rotary.h): to be called before the
 * first forward pass; until then it is the model's context. Keys that are cached must be computed again if the list
 * changes. */
static inline void model_set_longest(const Model *m, int32_t longest) {
    const ModelConfig *c = &m->config;
    float frequency[MODEL_HEAD_MAX];
    if (!m->frequency || !rope_has_lists(&c->rope)) return;
    rope_frequencies(&c->rope, c->rotary, longest < c->context ? longest : c->context, frequency);
    m->backend->upload(m->device, m->frequency, frequency, (size_t)c->rotary / 2 * sizeof *frequency);
}

/* Allocates the lengths of DoRA's rows. */
static inline bool model_new_dora(Model *m, Error *e) {
    if (!m->config.lora.dora) return true;
    m->dora = (DoraNorms *)xcalloc(1, sizeof *m->dora);
    m->dora->norm = (Floats *)m->backend->alloc(m->device, model_dora_bytes(&m->config), "lengths of rows", e);
    return m->dora->norm != NULL;
}

/* To be called after weights have changed in another way than by model_upload(). */
static inline void model_weights_changed(const Model *m) {
    if (m->dora) m->dora->fresh = false;
}

/* ---- quantised matrices ------------------------------------------------------------------------------------------ */

/* Matrix i of MATRIX_COUNT of layer l; of the embeddings and the output matrix there is only that of layer 0. */
static inline QuantMatrix *model_matrix(const Model *m, int i, int l) {
    return &m->matrix[(size_t)i * (size_t)m->config.layers + (size_t)l];
}

/* The quantised matrix of layer l of tensor i, or NULL if the tensor is stored as weights. */
static inline QuantMatrix *model_blocks_of(const Model *m, int i, int l) {
    const int matrix = m->matrix ? tensor_matrix(i) : -1;
    return matrix >= 0 && model_matrix(m, matrix, l)->parts ? model_matrix(m, matrix, l) : NULL;
}

/* Returns the types and rows of all matrices of a configuration, in new memory, or NULL: the rows of every matrix must be
 * whole blocks. type: of linear layers. Embeddings and the output matrix have at least 8 bits, as llama.cpp's quantize gives
 * them more than other tensors: Q8_0 instead of Q4_0. */
static inline QuantMatrix *quant_plan(const ModelConfig *c, QuantType type, Error *e) {
    TensorInfo t[TENSOR_COUNT];
    const uint32_t block = quant_info(type)->values;
    model_tensors(c, t);
    for (int i = 0; i < MATRIX_COUNT; i++)
        if (t[matrix_tensor[i]].columns % block) {
            error_set(e, "rows of %zu elements are not whole blocks of %u of %s: this model cannot be quantised",
                      t[matrix_tensor[i]].columns, block, quant_info(type)->name);
            return NULL;
        }
    QuantMatrix *plan = (QuantMatrix *)xcalloc((size_t)(MATRIX_COUNT * c->layers), sizeof *plan);
    for (int i = 0; i < MATRIX_COUNT; i++) {
        const TensorInfo *tensor = &t[matrix_tensor[i]];
        const QuantType own = i >= LINEAR_MATRICES && type == QUANT_Q4_0 ? QUANT_Q8_0 : type;
        for (size_t l = 0; l < (tensor->size ? tensor->layers : 0); l++)
            plan[(size_t)i * (size_t)c->layers + l] =
                (QuantMatrix){.parts = 1, .type = {(int32_t)own}, .rows = {(int32_t)tensor->rows}};
    }
    return plan;
}

/* Bytes of a range of rows of a matrix in the memory of the blocks, which it begins at a multiple of. */
enum { QUANT_ALIGN = 64 };
static inline size_t quant_part_bytes(const QuantMatrix *q, int part, size_t columns) {
    const size_t bytes = quant_bytes((QuantType)q->type[part], (size_t)q->rows[part] * columns);
    return (bytes + QUANT_ALIGN - 1) / QUANT_ALIGN * QUANT_ALIGN;
}

/* Sets the places of tensors and blocks, but for mapped ones. base: NULL, or the memory of the blocks. Returns the bytes of
 * the blocks. */
static inline size_t model_place(Model *m, Blocks *base) {
    size_t at = 0, place = 0;
    for (int i = 0; i < TENSOR_COUNT; i++) {
        TensorInfo *t = &m->tensor[i];
        const bool blocks = model_blocks_of(m, i, 0) != NULL;
        t->place = place;
        if (!blocks) place += t->size;
        for (size_t l = 0; l < (blocks ? t->layers : 0); l++) {
            QuantMatrix *q = model_blocks_of(m, i, (int)l);
            for (int part = 0; part < q->parts; part++) {
                if (q->mapped >> part & 1) continue;
                q->blocks[part] = base ? (Blocks *)((char *)base + at) : NULL;
                at += quant_part_bytes(q, part, t->columns);
            }
        }
    }
    m->stored = place;
    return at;
}

/* Elements of the largest quantised matrix; 0 if there is none. */
static inline size_t model_largest_matrix(const Model *m) {
    size_t most = 0;
    for (int i = 0; i < MATRIX_COUNT; i++) {
        const TensorInfo *t = &m->tensor[matrix_tensor[i]];
        if (model_blocks_of(m, matrix_tensor[i], 0) && t->rows * t->columns > most) most = t->rows * t->columns;
    }
    return most;
}

/* Bytes of a model's weights and quantised matrices, of which those in mapped files are the system's to reclaim. Those that
 * belong to another model do not count. */
static inline size_t model_held_bytes(const Model *m) {
    return m->mapped_bytes + m->stored * m->backend->weight_size + (m->borrowed ? 0 : m->block_bytes) +
           model_rotary_bytes(&m->config) + model_dora_bytes(&m->config);
}

/* ---- models ------------------------------------------------------------------------------------------------------ */

/* Allocates a model of the given shape without gradients. plan: (MATRIX_COUNT, L) the types and rows of quantised matrices
 * in new memory, which the model takes over; NULL: none. owner: NULL, or a model that has the same matrices, whose blocks
 * this one uses and which must outlive it. */
static inline bool model_new_quantized(Model *m, const ModelConfig *c, QuantMatrix *plan, const Model *owner,
                                       const Backend *b, Device *d, Error *e) {
    *m = (Model){.config = *c, .backend = b, .device = d, .matrix = plan, .borrowed = owner != NULL};
    m->parameters = model_tensors(c, m->tensor);
    if (plan && !b->quant_embed_forward)
        for (int i = LINEAR_MATRICES; i < MATRIX_COUNT; i++) model_matrix(m, i, 0)->parts = 0;
    m->block_bytes = model_place(m, NULL);
    if (plan) {
        m->blocks = owner ? owner->blocks : (Blocks *)b->alloc(d, m->block_bytes, "quantised weights", e);
        if (!m->blocks) return false;
        model_place(m, m->blocks);
    }
    m->weights = (Weights *)b->alloc(d, m->stored * b->weight_size, "weights", e);
    return m->weights && model_new_rotary(m, e) && model_new_dora(m, e);
}

/* Allocates a model of the given shape. Its weights are uninitialised. */
static inline bool model_new(Model *m, const ModelConfig *c, const Backend *b, Device *d, bool gradients, Error *e) {
    return model_new_quantized(m, c, NULL, NULL, b, d, e) && (!gradients || model_new_grads(m, e));
}

static inline void model_free(Model *m) {
    if (m->weights) m->backend->weights_release(m->device, m->weights, m->stored);
    if (m->blocks && !m->borrowed) m->backend->release(m->device, m->blocks);
    if (m->mapping) m->unmap(m->mapping);
    if (m->dora && m->dora->norm) m->backend->release(m->device, m->dora->norm);
    free(m->matrix), free(m->dora), free(m->grads_forgotten);
    if (m->grads) m->backend->release(m->device, m->grads);
    if (m->frequency) m->backend->release(m->device, m->frequency);
    *m = (Model){0};
}

/* ---- copies through the host ----------------------------------------------------------------------------------- */

/* The tensor of element `at` of all tensors. */
static inline int model_tensor_at(const Model *m, size_t at) {
    int i = TENSOR_COUNT - 1;
    while (i > 0 && (!m->tensor[i].size || m->tensor[i].offset > at)) i--;
    return i;
}

/* The place of element `at` of all tensors, which is not one of a quantised matrix. */
static inline Weights *model_weights_at(const Model *m, size_t at) {
    const TensorInfo *t = &m->tensor[model_tensor_at(m, at)];
    return weights_at(m->backend, m->weights, t->place + at - t->offset);
}

/* A run of elements that are stored in one way: the first n of elements at ... of all tensors. */
typedef struct ModelRun {
    size_t n;
    QuantMatrix *matrix; /* NULL: weights; else rows of range `part` */
    int part;
    size_t first; /* the run's first element in its range */
} ModelRun;

/* Finds the run at the beginning of elements [at, at + n). */
static inline ModelRun model_run(const Model *m, size_t at, size_t n) {
    ModelRun run = {.n = n};
    if (!m->matrix) return run;
    const int i = model_tensor_at(m, at);
    const TensorInfo *t = &m->tensor[i];
    const size_t of_layer = t->rows * t->columns;
    if (!model_blocks_of(m, i, 0)) {
        const size_t left = t->offset + t->size - at; /* the next tensor may be a matrix */
        run.n = left < n ? left : n;
        return run;
    }
    run.first = (at - t->offset) % of_layer;
    run.matrix = model_blocks_of(m, i, (int)((at - t->offset) / of_layer));
    while (run.first >= (size_t)run.matrix->rows[run.part] * t->columns)
        run.first -= (size_t)run.matrix->rows[run.part++] * t->columns;
    const size_t left = (size_t)run.matrix->rows[run.part] * t->columns - run.first;
    run.n = left < n ? left : n;
    return run;
}

/* Elements of quantised matrices that are converted at a time: whole blocks of any type. */
enum { MODEL_PIECE = 1 << 14 };

/* The memory of the block that contains element `first` of a range of rows. */
static inline Blocks *quant_blocks_at(const QuantMatrix *q, int part, size_t first) {
    return (Blocks *)((char *)(uintptr_t)q->blocks[part] + quant_bytes((QuantType)q->type[part], first));
}

/* Downloads the values of elements [first, first + n) of a range of rows. */
static inline void model_download_blocks(const Model *m, const QuantMatrix *q, int part, size_t first, float *host,
                                         size_t n) {
    const QuantType type = (QuantType)q->type[part];
    const size_t values = quant_info(type)->values, skip = first % values;
    uint8_t blocks[MODEL_PIECE * sizeof(float)];
    float piece[MODEL_PIECE];
    first -= skip;
    for (size_t at = 0, end = skip + n; at < end; at += MODEL_PIECE) {
        const size_t most = end - at < MODEL_PIECE ? end - at : MODEL_PIECE;
        const size_t whole = (most + values - 1) / values * values, from = at ? 0 : skip;
        m->backend->download(m->device, blocks, quant_blocks_at(q, part, first + at), quant_bytes(type, whole));
        quant_decode(type, blocks, piece, whole);
        memcpy(host + at + from - skip, piece + from, (most - from) * sizeof *host);
    }
}

/* Whether the type can hold all of the n values. */
static inline bool quant_fits(QuantType type, const float *values, size_t n) {
    const float limit = quant_limit(type);
    bool fits = true;
    for (size_t i = 0; i < n; i++) fits &= fabsf(values[i]) <= limit;
    return fits;
}

/* Quantises elements [first, first + n) of a range of rows, whole blocks of a type that quant_encode() writes. Values that
 * the type cannot hold mark the matrix, see model_check_matrices(). */
static inline void model_upload_blocks(const Model *m, QuantMatrix *q, int part, size_t first, const float *host,
                                       size_t n) {
    const QuantType type = (QuantType)q->type[part];
    uint8_t blocks[MODEL_PIECE * sizeof(float)];
    assert(quant_info(type)->encodes && first % quant_info(type)->values == 0 && n % quant_info(type)->values == 0);
    if (!quant_fits(type, host, n)) {
        q->unfit = 1;
        return;
    }
    for (size_t at = 0; at < n; at += MODEL_PIECE) {
        const size_t piece = n - at < MODEL_PIECE ? n - at : MODEL_PIECE;
        quant_encode(type, host + at, blocks, piece);
        m->backend->upload(m->device, quant_blocks_at(q, part, first + at), blocks, quant_bytes(type, piece));
    }
}

/* Copies weights [at, at + n) from the device to host[n], or from host[n] to the device, as float32. An upload to a
 * quantised matrix must consist of whole blocks. */
static inline void model_download(const Model *m, size_t at, float *host, size_t n) {
    for (size_t done = 0; done < n;) {
        const ModelRun run = model_run(m, at + done, n - done);
        if (run.matrix) model_download_blocks(m, run.matrix, run.part, run.first, host + done, run.n);
        else m->backend->weights_download(m->device, host + done, model_weights_at(m, at + done), run.n);
        done += run.n;
    }
}
static inline void model_upload(const Model *m, size_t at, const float *host, size_t n) {
    model_weights_changed(m);
    for (size_t done = 0; done < n;) {
        const ModelRun run = model_run(m, at + done, n - done);
        if (run.matrix) model_upload_blocks(m, run.matrix, run.part, run.first, host + done, run.n);
        else m->backend->weights_upload(m->device, model_weights_at(m, at + done), host + done, run.n);
        done += run.n;
    }
}

enum { MODEL_INIT_PART = 1 << 16 }; /* elements that a thread draws at a time */

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
    const bool rows_of_tokens = tensor == TENSOR_wte || tensor == TENSOR_headw;
    const size_t drawn = rows_of_tokens ? (size_t)c->vocab * (size_t)c->width : t->size;
    const int64_t parts = (int64_t)((t->size + MODEL_INIT_PART - 1) / MODEL_INIT_PART);
#pragma omp parallel for schedule(static) if (parts > 1)
    for (int64_t part = 0; part < parts; part++) {
        const size_t first = (size_t)part * MODEL_INIT_PART;
        const size_t end = t->size - first < MODEL_INIT_PART ? t->size : first + MODEL_INIT_PART;
        const size_t normals = drawn > first ? (drawn < end ? drawn : end) - first : 0;
        Random random = random_start(seed, RANDOM_INIT + t->stream);
        if (t->init == INIT_ZERO || t->init == INIT_ONE) {
            for (size_t i = first; i < end; i++) host[i] = t->init == INIT_ZERO ? 0.0f : 1.0f - (float)c->norm_plus_one;
        } else if (t->init == INIT_LORA) {
            random.index = first;
            for (size_t i = first; i < end; i++) host[i] = (float)(bound * (2 * random_real(&random) - 1));
        } else {
            random.index = 2 * first;
            random_normals(&random, deviation, host + first, normals);
            for (size_t i = first + normals; i < end; i++) host[i] = 0;
        }
    }
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
        model_upload(m, t->offset, host, t->size);
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
        model_upload(m, t->offset + first, host + first, last - first);
    }
    m->config.vocab = vocab;
    free(host);
}

/* Checks, after a model was loaded, that its quantised matrices could hold all values. what: the model. */
static inline bool model_check_matrices(const Model *m, const char *what, Error *e) {
    for (int i = 0; i < MATRIX_COUNT && m->matrix; i++)
        for (int l = 0; l < m->config.layers; l++)
            if (model_matrix(m, i, l)->unfit)
                return error_set(e,
                                 "%s: tensor %s of layer %d has weights that are not finite or too large to quantise",
                                 what, m->tensor[matrix_tensor[i]].name, l);
    return true;
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

/* Copies a model without gradients, to serve as a reference. Quantised matrices, which never change, are not copied: `from`
 * must outlive the copy. */
static inline bool model_copy(Model *to, const Model *from, Error *e) {
    QuantMatrix *plan = NULL;
    const size_t matrices = (size_t)(MATRIX_COUNT * from->config.layers);
    if (from->matrix) {
        plan = (QuantMatrix *)xcalloc(matrices, sizeof *plan);
        memcpy(plan, from->matrix, matrices * sizeof *plan);
    }
    if (!model_new_quantized(to, &from->config, plan, plan ? from : NULL, from->backend, from->device, e)) return false;
    for (int i = 0; i < TENSOR_COUNT; i++) {
        const TensorInfo *t = &from->tensor[i];
        if (model_blocks_of(from, i, 0)) continue;
        for (ModelChunk c = {0}; model_each_chunk(&c, t->size);) {
            model_download(from, t->offset + c.at, c.host, c.n);
            model_upload(to, t->offset + c.at, c.host, c.n);
        }
    }
    return true;
}

/* Makes a model use the quantised matrices of another one that was loaded from the same file, which must outlive it, and
 * releases its own. */
static inline void model_borrow_blocks(Model *m, const Model *owner) {
    assert(m->matrix && owner->matrix && m->block_bytes == owner->block_bytes && !m->borrowed);
    m->backend->release(m->device, m->blocks);
    m->blocks = owner->blocks;
    m->borrowed = true;
    model_place(m, m->blocks);
}

static inline bool model_sync(const Model *m, Error *e) { return m->backend->sync(m->device, e); }

/* Weights and gradients of layer l of tensor i, which is not a quantised matrix. Gradients are NULL if the tensor is not
 * trained. */
static inline const Weights *model_weight(const Model *m, int i, int l) {
    const TensorInfo *t = &m->tensor[i];
    assert(!model_blocks_of(m, i, l));
    return weights_at(m->backend, m->weights, t->place + (size_t)l * t->rows * t->columns);
}

/* Whether the gradients of layer l of tensor i, which is trained, count as 0 although their memory may hold others. */
static inline bool *model_grad_forgotten(const Model *m, int i, int l) {
    return &m->grads_forgotten[(size_t)i * (size_t)m->config.layers + (size_t)(l % m->grads_layers)];
}
static inline Floats *model_grad_memory(const Model *m, int i, int l) {
    const TensorInfo *t = &m->tensor[i];
    return floats_at(m->grads, m->grads_offset[i] + (size_t)(l % m->grads_layers) * t->rows * t->columns);
}

/* The output matrix, one of the two: as weights, or in blocks; NULL if it is not stored so. */
static inline const QuantMatrix *model_output_blocks(const Model *m) {
    return model_blocks_of(m, model_output_tensor(&m->config), 0);
}
static inline const Weights *model_output_weights(const Model *m) {
    return model_output_blocks(m) ? NULL : model_weight(m, model_output_tensor(&m->config), 0);
}

/* Gradients to add to or to read. */
static inline Floats *model_grad(const Model *m, int i, int l) {
    const TensorInfo *t = &m->tensor[i];
    if (!m->grads || !tensor_trained(t)) return NULL;
    Floats *grads = model_grad_memory(m, i, l);
    bool *forgotten = model_grad_forgotten(m, i, l);
    if (*forgotten) m->backend->zero(m->device, grads, t->rows * t->columns * sizeof(float));
    *forgotten = false;
    return grads;
}

/* The same of a matrix for the operation that follows, which adds a product to all of it: gradients that count as 0 are
 * stored instead, if the backend can. */
static inline Floats *model_grad_product(const Model *m, int i, int l) {
    if (!m->grads || !tensor_trained(&m->tensor[i]) || !m->backend->store_next || !*model_grad_forgotten(m, i, l))
        return model_grad(m, i, l);
    Floats *grads = model_grad_memory(m, i, l);
    m->backend->store_next(m->device, grads);
    *model_grad_forgotten(m, i, l) = false;
    return grads;
}

/* Writes zeros to all gradients that count as 0: required before the whole memory of the gradients is read. */
static inline void model_settle_grads(const Model *m) {
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (int l = 0; l < (int)m->tensor[i].layers; l++) model_grad(m, i, l);
}

/* Makes all gradients 0. Their memory is not written before they are used. */
static inline void model_forget_grads(const Model *m) {
    if (!m->backend->store_next) m->backend->zero(m->device, m->grads, m->grads_count * sizeof(float));
    else memset(m->grads_forgotten, true, (size_t)(TENSOR_COUNT * m->config.layers) * sizeof *m->grads_forgotten);
}

/* Makes all gradients 0, in memory. */
static inline void model_zero_grads(const Model *m) {
    m->backend->zero(m->device, m->grads, m->grads_count * sizeof(float));
    memset(m->grads_forgotten, false, (size_t)(TENSOR_COUNT * m->config.layers) * sizeof *m->grads_forgotten);
}

#endif
