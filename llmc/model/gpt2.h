/* gpt2.h - the model: forward, backward and cached decode, written once over the table of backend.h.
 *
 *   layer l:   ln1 = layernorm(x)             qkv = ln1 Wqkv^T + b        atty = attention(qkv)
 *              x2 = x + atty Wo^T + b         ln2 = layernorm(x2)
 *              fch = ln2 Wfc^T + b            x' = x2 + gelu(fch) Wproj^T + b
 *   head:      z = layernorm(x) wte^T         value = layernorm(x) . valuew + valueb   (if there is a value head)
 *
 * A batch is packed (batch.h). The head runs only on its target rows, and logits never exist for the whole batch. A
 * method exchanges only small host arrays with the model: it gets the log-probabilities, entropies and values of R
 * targets and returns their gradients.
 *
 *     model_forward(&model, &work, &batch, 1.0f, &out);         // out.logp[R], out.entropy[R], out.value[R]
 *     loss = objective(out.logp, batch.targets, dlogp);        // any objective
 *     model_backward(&model, &work, &batch, 1.0f, dlogp, NULL, NULL);   // adds to the gradients of the parameters
 *
 * An objective whose dlogp does not depend on logp (maximum likelihood) uses model_forward_backward(), which computes
 * the head's logits once instead of twice.
 *
 * A Workspace holds the activations of one batch in one allocation, whose size workspace_bytes() predicts. In training,
 * recompute trades time for memory: 0 keeps all activations, 1 recomputes the outputs of layernorm and GELU, and 2
 * recomputes whole layers from their inputs. A Workspace for inference keeps the activations of one layer only.
 *
 * Host code here never dereferences a device pointer. Device errors are sticky; model_sync() reports them.
 */
#ifndef LLMC_MODEL_GPT2_H
#define LLMC_MODEL_GPT2_H

#include "backend.h"
#include "config.h"
#include "share.h"
#include "../base/random.h"
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
    /* Several ranks (dist.h). With zero 2 the gradients of only grads_layers layers are kept at a time, those of layer
     * l in slot l % grads_layers. A backward pass calls layer_done as soon as all gradients of a layer are complete,
     * and at its end with layer -1. */
    Share share;
    int grads_layers;
    void (*layer_done)(void *context, int layer);
    void *layer_context;
} Model;

/* Keys and values of earlier tokens: `rows` cache rows per layer. */
typedef struct KVCache {
    int rows;
    Acts *k, *v; /* (L, rows, KC) */
} KVCache;

typedef enum { SIZE_ACTS, SIZE_FLOATS, SIZE_INTS } SizeKind;
/* The activations. An item has `items` elements of its kind per row, target or segment of the batch (`of`). In training
 * each layer has its own copy at recompute levels up to `kept`; otherwise all layers share one. */
// clang-format off
/*    name        kind         items              of        kept when */
#define WORKSPACE_ITEMS(A)                                               \
    A(token,      SIZE_INTS,   1,                 rows,     -1,  ALWAYS) \
    A(position,   SIZE_INTS,   1,                 rows,     -1,  ALWAYS) \
    A(noise,      SIZE_FLOATS, 1,                 rows,     -1,  TRAIN)  \
    A(slot,       SIZE_INTS,   1,                 rows,     -1,  INFER)  \
    A(segment,    SIZE_INTS,   6,                 segments, -1,  ALWAYS) \
    A(encoded,    SIZE_ACTS,   c->width,          rows,     -1,  ALWAYS) \
    A(ln1,        SIZE_ACTS,   c->width,          rows,     0,   ALWAYS) \
    A(mean1,      SIZE_FLOATS, 1,                 rows,     1,   ALWAYS) \
    A(rstd1,      SIZE_FLOATS, 1,                 rows,     1,   ALWAYS) \
    A(qkv,        SIZE_ACTS,   model_qkv_width(c), rows,     1,   ALWAYS) \
    A(atty,       SIZE_ACTS,   c->width,          rows,     1,   ALWAYS) \
    A(lse,        SIZE_FLOATS, c->heads,          rows,     1,   TRAIN)  \
    A(x2,         SIZE_ACTS,   c->width,          rows,     1,   TRAIN)  \
    A(ln2,        SIZE_ACTS,   c->width,          rows,     0,   ALWAYS) \
    A(mean2,      SIZE_FLOATS, 1,                 rows,     1,   ALWAYS) \
    A(rstd2,      SIZE_FLOATS, 1,                 rows,     1,   ALWAYS) \
    A(fch,        SIZE_ACTS,   c->hidden,         rows,     1,   ALWAYS) \
    A(gelu,       SIZE_ACTS,   c->hidden,         rows,     0,   ALWAYS) \
    A(x3,         SIZE_ACTS,   c->width,          rows,     2,   TRAIN)  \
    A(delta,      SIZE_ACTS,   c->width,          rows,     -1,  ALWAYS) \
    A(lnf,        SIZE_ACTS,   c->width,          rows,     -1,  ALWAYS) \
    A(meanf,      SIZE_FLOATS, 1,                 rows,     -1,  ALWAYS) \
    A(rstdf,      SIZE_FLOATS, 1,                 rows,     -1,  ALWAYS) \
    A(target_row, SIZE_INTS,   1,                 targets,  -1,  ALWAYS) \
    A(target,     SIZE_INTS,   1,                 targets,  -1,  ALWAYS) \
    A(h,          SIZE_ACTS,   c->width,          targets,  -1,  ALWAYS) \
    A(logp,       SIZE_FLOATS, 1,                 targets,  -1,  ALWAYS) \
    A(entropy,    SIZE_FLOATS, 1,                 targets,  -1,  ALWAYS) \
    A(argmax,     SIZE_INTS,   1,                 targets,  -1,  ALWAYS) \
    A(value,      SIZE_FLOATS, 1,                 targets,  -1,  ALWAYS) \
    A(stream,     SIZE_INTS,   2,                 targets,  -1,  INFER)  \
    A(index,      SIZE_INTS,   1,                 targets,  -1,  INFER)  \
    A(seen_count, SIZE_INTS,   1,                 targets,  -1,  INFER)  \
    A(dlogp,      SIZE_FLOATS, 1,                 targets,  -1,  TRAIN)  \
    A(dentropy,   SIZE_FLOATS, 1,                 targets,  -1,  TRAIN)  \
    A(dvalue,     SIZE_FLOATS, 1,                 targets,  -1,  TRAIN)  \
    A(dh,         SIZE_ACTS,   c->width,          targets,  -1,  TRAIN)  \
    A(dx,         SIZE_ACTS,   c->width,          rows,     -1,  TRAIN)  \
    A(dnarrow,    SIZE_ACTS,   c->width,          rows,     -1,  TRAIN)  \
    A(dwide,      SIZE_ACTS,   model_widest(c),    rows,     -1,  TRAIN)
// clang-format on

enum {
#define A(name, kind, items, of, kept, when) WORK_##name,
    WORKSPACE_ITEMS(A)
#undef A
        WORK_COUNT
};

typedef struct Workspace {
    int rows, targets, segments; /* capacities */
    bool train;
    int recompute;
    void *arena;
    size_t bytes;
    size_t offset[WORK_COUNT], stride[WORK_COUNT]; /* bytes; stride from layer to layer, 0 if all layers share one */
    /* NEFTune: noise_scale[N] on the host, or NULL for no noise; noise_stream identifies the step */
    const float *noise_scale;
    uint64_t noise_seed, noise_stream;
} Workspace;

/* Results of a forward pass, in host memory. NULL: not computed. */
typedef struct ModelOutput {
    float *logp;     /* (R) */
    float *entropy;  /* (R) nats */
    int32_t *argmax; /* (R) */
    float *value;    /* (R) */
} ModelOutput;

static inline int32_t model_widest(const ModelConfig *c) {
    return c->hidden > model_qkv_width(c) ? c->hidden : model_qkv_width(c);
}

/* ---- the model ------------------------------------------------------------------------------------------------- */

static inline size_t model_bytes(const ModelConfig *c, const Backend *b, bool gradients) {
    TensorInfo t[TENSOR_COUNT];
    return model_tensors(c, t) * (b->weight_size + (gradients ? sizeof(float) : 0));
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

/* Allocates a model of the given shape. Its weights are uninitialised. */
static inline bool model_new(Model *m, const ModelConfig *c, const Backend *b, Device *d, bool gradients, Error *e) {
    *m = (Model){.config = *c, .backend = b, .device = d};
    m->parameters = model_tensors(c, m->tensor);
    m->weights = (Weights *)b->alloc(d, m->parameters * b->weight_size, "weights", e);
    return m->weights && (!gradients || model_new_grads(m, e));
}

static inline void model_free(Model *m) {
    if (m->weights) m->backend->weights_release(m->device, m->weights, m->parameters);
    if (m->grads) m->backend->release(m->device, m->grads);
    *m = (Model){0};
}

/* Initial values of one tensor, into host[t->size]: N(0, 0.02); residual projections are scaled by 1/sqrt(2L) (GPT-2,
 * section 2.3); the value head is N(0, 1/(C+1)) (Stiennon et al. 2020); layernorm weights are 1, biases 0 and the
 * padding rows of wte 0. */
static inline void model_init_tensor(const ModelConfig *c, int tensor, const TensorInfo *t, uint64_t seed,
                                     float *host) {
    const double deviation = t->init == INIT_RESIDUAL ? 0.02 / sqrt(2.0 * c->layers)
                             : t->init == INIT_HEAD   ? 1.0 / sqrt(c->width + 1.0)
                                                      : 0.02;
    Random random = random_start(seed, RANDOM_INIT + (uint64_t)tensor);
    const size_t drawn = tensor == TENSOR_wte ? (size_t)c->vocab * (size_t)c->width : t->size;
    for (size_t i = 0; i < t->size; i++)
        host[i] = t->init == INIT_ZERO || i >= drawn ? 0.0f
                  : t->init == INIT_ONE              ? 1.0f
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

/* Adds the tokens [V, vocab), whose embeddings use the padding rows of wte: vocab <= Vp. */
static inline void model_grow_vocab(Model *m, int32_t vocab, uint64_t seed) {
    ModelConfig c = m->config;
    const TensorInfo *t = &m->tensor[TENSOR_wte];
    const size_t first = (size_t)c.vocab * (size_t)c.width, last = (size_t)vocab * (size_t)c.width;
    float *host = (float *)xmalloc(t->size * sizeof *host);
    assert(vocab >= c.vocab && vocab <= c.padded_vocab);
    c.vocab = vocab;
    model_init_tensor(&c, TENSOR_wte, t, seed, host);
    m->backend->weights_upload(m->device, weights_at(m->backend, m->weights, t->offset + first), host + first,
                               last - first);
    m->config.vocab = vocab;
    free(host);
}

/* Copies a model without gradients, to serve as a reference. */
static inline bool model_copy(Model *to, const Model *from, Error *e) {
    if (!model_new(to, &from->config, from->backend, from->device, false, e)) return false;
    float *host = (float *)xmalloc(from->parameters * sizeof *host);
    from->backend->weights_download(from->device, host, from->weights, from->parameters);
    to->backend->weights_upload(to->device, to->weights, host, to->parameters);
    free(host);
    return true;
}

static inline void model_zero_grads(const Model *m) {
    m->backend->zero(m->device, m->grads, m->grads_count * sizeof(float));
}

static inline bool model_sync(const Model *m, Error *e) { return m->backend->sync(m->device, e); }

/* Weights and gradients of layer l of tensor i. */
static inline const Weights *model_weight(const Model *m, int i, int l) {
    const TensorInfo *t = &m->tensor[i];
    return weights_at(m->backend, m->weights, t->offset + (size_t)l * t->rows * t->columns);
}
static inline Floats *model_grad(const Model *m, int i, int l) {
    const TensorInfo *t = &m->tensor[i];
    return floats_at(m->grads, m->grads_offset[i] + (size_t)(l % m->grads_layers) * t->rows * t->columns);
}

/* ---- the workspace --------------------------------------------------------------------------------------------- */

/* Fills in sizes and offsets; returns the size of the arena in bytes. */
static inline size_t workspace_layout(Workspace *w, const ModelConfig *c, const Backend *b) {
    enum { ALWAYS, TRAIN, INFER };
    const size_t unit[] = {b->act_size, sizeof(float), sizeof(int32_t)};
    size_t at = 0;
    int i = 0;
#define A(name, kind, items, of, kept, when)                                                                           \
    {                                                                                                                  \
        const size_t count = ((size_t)w->of + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN;                                  \
        const bool present = (when) == ALWAYS || ((when) == TRAIN) == w->train;                                        \
        const bool stacked = w->train && (kept) >= w->recompute;                                                       \
        const size_t bytes = (count * (size_t)(items)*unit[kind] + 63) / 64 * 64;                                      \
        w->offset[i] = at;                                                                                             \
        w->stride[i] = stacked ? bytes : 0;                                                                            \
        at += present ? bytes * (stacked ? (size_t)c->layers : 1) : 0;                                                 \
        i++;                                                                                                           \
    }
    WORKSPACE_ITEMS(A)
#undef A
    return w->bytes = at;
}

/* Bytes that workspace_new() would allocate. */
static inline size_t workspace_bytes(const ModelConfig *c, const Backend *b, int rows, int targets, int segments,
                                     bool train, int recompute) {
    Workspace w = {.rows = rows, .targets = targets, .segments = segments, .train = train, .recompute = recompute};
    return workspace_layout(&w, c, b);
}

/* rows, targets, segments: capacities, the sizes of the largest batch. recompute: 0, 1 or 2 (training only). */
static inline bool workspace_new(Workspace *w, const Model *m, int rows, int targets, int segments, bool train,
                                 int recompute, Error *e) {
    *w = (Workspace){.rows = rows, .targets = targets, .segments = segments, .train = train, .recompute = recompute};
    workspace_layout(w, &m->config, m->backend);
    w->arena = m->backend->alloc(m->device, w->bytes, "activations", e);
    if (w->arena) m->backend->zero(m->device, w->arena, w->bytes);
    return w->arena != NULL;
}

static inline void workspace_free(Workspace *w, const Model *m) {
    if (w->arena) m->backend->release(m->device, w->arena);
    *w = (Workspace){0};
}

static inline void *work_item(const Workspace *w, int item, int layer) {
    return (char *)w->arena + w->offset[item] + w->stride[item] * (size_t)layer;
}
#define WORK_A(name, layer) ((Acts *)work_item(w, WORK_##name, layer))
#define WORK_F(name, layer) ((Floats *)work_item(w, WORK_##name, layer))
#define WORK_I(name)        ((Ints *)work_item(w, WORK_##name, 0))

/* The residual stream after attention and after the MLP. Inference uses one buffer for both. */
static inline Acts *work_x2(const Workspace *w, int l) { return w->train ? WORK_A(x2, l) : WORK_A(encoded, 0); }
static inline Acts *work_x3(const Workspace *w, int l) {
    return l < 0 || !w->train ? WORK_A(encoded, 0) : WORK_A(x3, l);
}

/* ---- key/value cache ------------------------------------------------------------------------------------------- */

static inline int32_t model_kv_width(const ModelConfig *c) { return c->kv_heads * (c->width / c->heads); }

static inline size_t kv_bytes(const ModelConfig *c, const Backend *b, int rows) {
    return 2 * (size_t)c->layers * (size_t)rows * (size_t)model_kv_width(c) * b->act_size;
}

static inline bool kv_new(KVCache *kv, const Model *m, int rows, Error *e) {
    const size_t half = kv_bytes(&m->config, m->backend, rows) / 2;
    kv->rows = rows;
    kv->k = (Acts *)m->backend->alloc(m->device, 2 * half, "key/value cache", e);
    if (kv->k) m->backend->zero(m->device, kv->k, 2 * half);
    kv->v = kv->k ? (Acts *)((char *)kv->k + half) : NULL;
    return kv->k != NULL;
}

static inline void kv_free(KVCache *kv, const Model *m) {
    if (kv->k) m->backend->release(m->device, kv->k);
    *kv = (KVCache){0};
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

static inline Attention model_attention(const Model *m, const Workspace *w, const Batch *batch, int l) {
    const ModelConfig *c = &m->config;
    const int D = c->width / c->heads, Q = model_qkv_width(c);
    Acts *qkv = WORK_A(qkv, l);
    Attention a = {.rows = batch->rows,
                   .segments = batch->segments,
                   .heads = c->heads,
                   .kv_heads = c->kv_heads,
                   .head_size = D,
                   .q_stride = Q,
                   .kv_stride = Q,
                   .scale = 1.0f / sqrtf((float)D)};
    a.segment = WORK_I(segment);
    a.q = qkv;
    a.k = acts_at(m->backend, qkv, (size_t)c->width);
    a.v = acts_at(m->backend, qkv, (size_t)(c->width + model_kv_width(c)));
    a.out = WORK_A(atty, l);
    a.lse = w->train ? WORK_F(lse, l) : NULL;
    return a;
}

/* A layer from ln1 to gelu: everything except its last product. With a cache, keys and values are stored in it and read
 * from it. */
static inline void model_layer(const Model *m, const Workspace *w, const Batch *batch, const KVCache *kv, int l) {
    const Backend *b = m->backend;
    Device *d = m->device;
    const ModelConfig *c = &m->config;
    const int N = batch->rows, C = c->width, F = c->hidden, Q = model_qkv_width(c), KC = model_kv_width(c);
    b->linear_forward(d, WORK_A(qkv, l), WORK_A(ln1, l), model_weight(m, TENSOR_qkvw, l),
                      model_weight(m, TENSOR_qkvb, l), N, C, Q);
    Attention a = model_attention(m, w, batch, l);
    if (kv) {
        const size_t at = (size_t)l * (size_t)kv->rows * (size_t)KC;
        Acts *k = acts_at(b, kv->k, at), *v = acts_at(b, kv->v, at);
        b->kv_store(d, k, v, a.k, a.v, Q, WORK_I(slot), N, KC);
        a.k = k;
        a.v = v;
        a.kv_stride = KC;
    }
    b->attention_forward(d, &a);
    b->linear_forward(d, WORK_A(delta, 0), WORK_A(atty, l), model_weight(m, TENSOR_attprojw, l),
                      model_weight(m, TENSOR_attprojb, l), N, C, C);
    b->residual_layernorm_forward(d, work_x2(w, l), WORK_A(ln2, l), WORK_F(mean2, l), WORK_F(rstd2, l),
                                  work_x3(w, l - 1), WORK_A(delta, 0), model_weight(m, TENSOR_ln2w, l),
                                  model_weight(m, TENSOR_ln2b, l), N, C);
    b->linear_gelu_forward(d, WORK_A(fch, l), WORK_A(gelu, l), WORK_A(ln2, l), model_weight(m, TENSOR_fcw, l),
                           model_weight(m, TENSOR_fcb, l), N, C, F);
}

/* Uploads the batch and runs the model from the tokens to the output of the final layernorm. */
static inline void model_trunk(const Model *m, const Workspace *w, const Batch *batch, const KVCache *kv) {
    const Backend *b = m->backend;
    Device *d = m->device;
    const ModelConfig *c = &m->config;
    const int N = batch->rows, C = c->width, L = c->layers, F = c->hidden;
    b->upload(d, WORK_I(token), batch->tokens, (size_t)N * sizeof(int32_t));
    b->upload(d, WORK_I(position), batch->positions, (size_t)N * sizeof(int32_t));
    b->upload(d, WORK_I(segment), batch->segment, (size_t)batch->segments * sizeof(Segment));
    b->embed_forward(d, WORK_A(encoded, 0), model_weight(m, TENSOR_wte, 0), model_weight(m, TENSOR_wpe, 0),
                     WORK_I(token), WORK_I(position), N, C);
    if (w->noise_scale) {
        b->upload(d, WORK_F(noise, 0), w->noise_scale, (size_t)N * sizeof(float));
        b->noise_add(d, WORK_A(encoded, 0), WORK_F(noise, 0), N, C, w->noise_seed, w->noise_stream);
    }
    b->layernorm_forward(d, WORK_A(ln1, 0), WORK_F(mean1, 0), WORK_F(rstd1, 0), WORK_A(encoded, 0),
                         model_weight(m, TENSOR_ln1w, 0), model_weight(m, TENSOR_ln1b, 0), N, C);
    for (int l = 0; l < L; l++) {
        model_layer(m, w, batch, kv, l);
        b->linear_forward(d, WORK_A(delta, 0), WORK_A(gelu, l), model_weight(m, TENSOR_fcprojw, l),
                          model_weight(m, TENSOR_fcprojb, l), N, F, C);
        const bool last = l == L - 1;
        b->residual_layernorm_forward(d, work_x3(w, l), last ? WORK_A(lnf, 0) : WORK_A(ln1, l + 1),
                                      last ? WORK_F(meanf, 0) : WORK_F(mean1, l + 1),
                                      last ? WORK_F(rstdf, 0) : WORK_F(rstd1, l + 1), work_x2(w, l), WORK_A(delta, 0),
                                      last ? model_weight(m, TENSOR_lnfw, 0) : model_weight(m, TENSOR_ln1w, l + 1),
                                      last ? model_weight(m, TENSOR_lnfb, 0) : model_weight(m, TENSOR_ln1b, l + 1), N,
                                      C);
    }
}

/* Gathers the target rows of the final layernorm's output into h. */
static inline void model_targets(const Model *m, const Workspace *w, const Batch *batch) {
    const Backend *b = m->backend;
    b->upload(m->device, WORK_I(target_row), batch->target_row, (size_t)batch->targets * sizeof(int32_t));
    b->gather_rows(m->device, WORK_A(h, 0), WORK_A(lnf, 0), WORK_I(target_row), batch->targets, m->config.width);
}

static inline Head model_head(const Model *m, const Workspace *w, const Batch *batch, float temperature) {
    const ModelConfig *c = &m->config;
    Head head = {.rows = batch->targets,
                 .channels = c->width,
                 .vocab = c->vocab,
                 .padded_vocab = c->padded_vocab,
                 .temperature = temperature,
                 .h = WORK_A(h, 0),
                 .wte = model_weight(m, TENSOR_wte, 0),
                 .target = WORK_I(target),
                 .logp = WORK_F(logp, 0)};
    return head;
}

/* Computes what `out` requests for the batch's targets: log-probabilities (at the given temperature), entropies, most
 * likely tokens and values. dlogp: NULL, or the gradient of the loss with respect to each log-probability, (R) on the
 * host, if it is known in advance; the head's part of the backward pass is then done in the same pass. */
static inline void model_forward_known(const Model *m, const Workspace *w, const Batch *batch, float temperature,
                                       const ModelOutput *out, const float *dlogp) {
    const Backend *b = m->backend;
    Device *d = m->device;
    const size_t R = (size_t)batch->targets;
    assert(batch->rows <= w->rows && batch->targets <= w->targets && batch->segments <= w->segments);
    model_trunk(m, w, batch, NULL);
    model_targets(m, w, batch);
    b->upload(d, WORK_I(target), batch->target_token, R * sizeof(int32_t));
    Head head = model_head(m, w, batch, temperature);
    head.entropy = out->entropy ? WORK_F(entropy, 0) : NULL;
    head.argmax = out->argmax ? WORK_I(argmax) : NULL;
    if (dlogp) {
        b->upload(d, WORK_F(dlogp, 0), dlogp, R * sizeof(float));
        head.dlogp = WORK_F(dlogp, 0);
        head.dh = WORK_A(dh, 0);
        head.dwte = model_grad(m, TENSOR_wte, 0);
    }
    if (out->logp || out->entropy || out->argmax || dlogp) b->head(d, &head); /* values alone need no logits */
    if (out->logp) b->download(d, out->logp, head.logp, R * sizeof(float));
    if (out->entropy) b->download(d, out->entropy, head.entropy, R * sizeof(float));
    if (out->argmax) b->download(d, out->argmax, head.argmax, R * sizeof(int32_t));
    if (out->value) {
        assert(m->config.value_head);
        b->value_forward(d, WORK_F(value, 0), WORK_A(h, 0), model_weight(m, TENSOR_valuew, 0),
                         model_weight(m, TENSOR_valueb, 0), (int)R, m->config.width);
        b->download(d, out->value, WORK_F(value, 0), R * sizeof(float));
    }
}

static inline void model_forward(const Model *m, const Workspace *w, const Batch *batch, float temperature,
                                 const ModelOutput *out) {
    model_forward_known(m, w, batch, temperature, out, NULL);
}

/* Computes all logits of the batch's targets, for inspection: logits (R, V) on the host. */
static inline bool model_logits(const Model *m, const Workspace *w, const Batch *batch, float *logits, Error *e) {
    const ModelConfig *c = &m->config;
    const size_t bytes = (size_t)batch->targets * (size_t)c->vocab * sizeof(float);
    Floats *all = (Floats *)m->backend->alloc(m->device, bytes, "logits", e);
    if (!all) return false;
    model_trunk(m, w, batch, NULL);
    model_targets(m, w, batch);
    m->backend->logits(m->device, all, WORK_A(h, 0), model_weight(m, TENSOR_wte, 0), batch->targets, c->width, c->vocab,
                       c->padded_vocab);
    m->backend->download(m->device, logits, all, bytes);
    m->backend->release(m->device, all);
    return model_sync(m, e);
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

/* Backward pass from the head's input, whose gradient is in dh, to the embeddings. */
static inline void model_trunk_backward(const Model *m, const Workspace *w, const Batch *batch) {
    const Backend *b = m->backend;
    Device *d = m->device;
    const ModelConfig *c = &m->config;
    const int N = batch->rows, C = c->width, L = c->layers, F = c->hidden, Q = model_qkv_width(c);
    Acts *dx = WORK_A(dx, 0), *dnarrow = WORK_A(dnarrow, 0), *dwide = WORK_A(dwide, 0);
    const size_t narrow_bytes = (size_t)N * (size_t)C * b->act_size;
    b->zero(d, dnarrow, narrow_bytes);
    b->zero(d, dx, narrow_bytes);
    b->scatter_rows(d, dnarrow, WORK_A(dh, 0), WORK_I(target_row), batch->targets, C);
    b->layernorm_backward(d, dx, model_grad(m, TENSOR_lnfw, 0), model_grad(m, TENSOR_lnfb, 0), dnarrow,
                          work_x3(w, L - 1), WORK_F(meanf, 0), WORK_F(rstdf, 0), model_weight(m, TENSOR_lnfw, 0), N, C);
    for (int l = L - 1; l >= 0; l--) {
        if (w->recompute >= 1)
            b->layernorm_forward(d, WORK_A(ln1, l), WORK_F(mean1, l), WORK_F(rstd1, l), work_x3(w, l - 1),
                                 model_weight(m, TENSOR_ln1w, l), model_weight(m, TENSOR_ln1b, l), N, C);
        if (w->recompute == 1) {
            b->layernorm_forward(d, WORK_A(ln2, l), WORK_F(mean2, l), WORK_F(rstd2, l), WORK_A(x2, l),
                                 model_weight(m, TENSOR_ln2w, l), model_weight(m, TENSOR_ln2b, l), N, C);
            b->gelu_forward(d, WORK_A(gelu, l), WORK_A(fch, l), (size_t)N * (size_t)F);
        }
        if (w->recompute == 2) model_layer(m, w, batch, NULL, l);
        /* x' = x2 + gelu(fch) Wproj^T + b */
        b->linear_backward(d, dwide, model_grad(m, TENSOR_fcprojw, l), model_grad(m, TENSOR_fcprojb, l), dx,
                           WORK_A(gelu, l), model_weight(m, TENSOR_fcprojw, l), N, F, C);
        b->gelu_backward(d, dwide, WORK_A(fch, l), (size_t)N * (size_t)F);
        b->linear_backward(d, dnarrow, model_grad(m, TENSOR_fcw, l), model_grad(m, TENSOR_fcb, l), dwide,
                           WORK_A(ln2, l), model_weight(m, TENSOR_fcw, l), N, C, F);
        b->layernorm_backward(d, dx, model_grad(m, TENSOR_ln2w, l), model_grad(m, TENSOR_ln2b, l), dnarrow,
                              WORK_A(x2, l), WORK_F(mean2, l), WORK_F(rstd2, l), model_weight(m, TENSOR_ln2w, l), N, C);
        /* x2 = x + atty Wo^T + b */
        b->linear_backward(d, dnarrow, model_grad(m, TENSOR_attprojw, l), model_grad(m, TENSOR_attprojb, l), dx,
                           WORK_A(atty, l), model_weight(m, TENSOR_attprojw, l), N, C, C);
        Attention a = model_attention(m, w, batch, l);
        a.dout = dnarrow;
        a.dq = dwide;
        a.dk = acts_at(b, dwide, (size_t)C);
        a.dv = acts_at(b, dwide, (size_t)(C + model_kv_width(c)));
        b->attention_backward(d, &a);
        b->linear_backward(d, dnarrow, model_grad(m, TENSOR_qkvw, l), model_grad(m, TENSOR_qkvb, l), dwide,
                           WORK_A(ln1, l), model_weight(m, TENSOR_qkvw, l), N, C, Q);
        b->layernorm_backward(d, dx, model_grad(m, TENSOR_ln1w, l), model_grad(m, TENSOR_ln1b, l), dnarrow,
                              work_x3(w, l - 1), WORK_F(mean1, l), WORK_F(rstd1, l), model_weight(m, TENSOR_ln1w, l), N,
                              C);
        if (m->layer_done) m->layer_done(m->layer_context, l);
    }
    b->embed_backward(d, model_grad(m, TENSOR_wte, 0), model_grad(m, TENSOR_wpe, 0), dx, WORK_I(token),
                      WORK_I(position), N, C);
    if (m->layer_done) m->layer_done(m->layer_context, -1);
}

/* Adds the gradients of the parameters, after model_forward() on the same batch. dlogp, dentropy, dvalue: derivatives of
 * the loss, (R) on the host; NULL for 0. A loss of values alone (dlogp and dentropy NULL) computes no logits. */
static inline void model_backward(const Model *m, const Workspace *w, const Batch *batch, float temperature,
                                  const float *dlogp, const float *dentropy, const float *dvalue) {
    const Backend *b = m->backend;
    Device *d = m->device;
    const size_t bytes = (size_t)batch->targets * sizeof(float);
    if (dlogp || dentropy) {
        Head head = model_head(m, w, batch, temperature);
        if (dlogp) b->upload(d, WORK_F(dlogp, 0), dlogp, bytes);
        else b->zero(d, WORK_F(dlogp, 0), bytes);
        if (dentropy) b->upload(d, WORK_F(dentropy, 0), dentropy, bytes);
        head.dlogp = WORK_F(dlogp, 0);
        head.dentropy = dentropy ? WORK_F(dentropy, 0) : NULL;
        head.dh = WORK_A(dh, 0);
        head.dwte = model_grad(m, TENSOR_wte, 0);
        b->head(d, &head);
    } else b->zero(d, WORK_A(dh, 0), (size_t)batch->targets * (size_t)m->config.width * b->act_size);
    if (dvalue) {
        assert(m->config.value_head);
        b->upload(d, WORK_F(dvalue, 0), dvalue, bytes);
        b->value_backward(d, WORK_A(dh, 0), model_grad(m, TENSOR_valuew, 0), model_grad(m, TENSOR_valueb, 0),
                          WORK_F(dvalue, 0), WORK_A(h, 0), model_weight(m, TENSOR_valuew, 0), batch->targets,
                          m->config.width);
    }
    model_trunk_backward(m, w, batch);
}

/* Forward and backward pass in one, for a loss that is linear in the log-probabilities: dlogp is known in advance. */
static inline void model_forward_backward(const Model *m, const Workspace *w, const Batch *batch, float temperature,
                                          const float *dlogp, const ModelOutput *out) {
    model_forward_known(m, w, batch, temperature, out, dlogp);
    model_trunk_backward(m, w, batch);
}

/* ---- cached decode --------------------------------------------------------------------------------------------- */

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

/* Runs the batch's rows, which are new tokens of any number of sequences (batch.h describes how segments refer to cache
 * rows). Stores their keys and values in the cache and draws a token after each target row with the settings of `how`,
 * whose other fields are filled in here. */
static inline void model_decode(const Model *m, const Workspace *w, const KVCache *kv, const Batch *batch, Draw how,
                                const DecodeStep *step) {
    const Backend *b = m->backend;
    Device *d = m->device;
    const ModelConfig *c = &m->config;
    const size_t R = (size_t)batch->targets;
    assert(batch->rows <= w->rows && batch->targets <= w->targets && batch->segments <= w->segments);
    b->upload(d, WORK_I(slot), step->slot, (size_t)batch->rows * sizeof(int32_t));
    model_trunk(m, w, batch, kv);
    if (R == 0) return;
    model_targets(m, w, batch);
    b->upload(d, WORK_I(stream), step->stream, 2 * R * sizeof(int32_t));
    b->upload(d, WORK_I(index), step->index, R * sizeof(int32_t));
    how.rows = (int)R;
    how.channels = c->width;
    how.vocab = c->vocab;
    how.padded_vocab = c->padded_vocab;
    how.h = WORK_A(h, 0);
    how.wte = model_weight(m, TENSOR_wte, 0);
    how.stream = WORK_I(stream);
    how.index = WORK_I(index);
    how.history = step->history;
    how.history_stride = step->history_stride;
    if (step->history) {
        b->upload(d, WORK_I(seen_count), step->history_len, R * sizeof(int32_t));
        how.history_len = WORK_I(seen_count);
    }
    how.token = WORK_I(argmax);
    how.logp = WORK_F(logp, 0);
    how.kept_logp = step->kept_logp ? WORK_F(entropy, 0) : NULL;
    b->sample(d, &how);
    b->download(d, step->token, how.token, R * sizeof(int32_t));
    b->download(d, step->logp, how.logp, R * sizeof(float));
    if (step->kept_logp) b->download(d, step->kept_logp, how.kept_logp, R * sizeof(float));
}

#endif
