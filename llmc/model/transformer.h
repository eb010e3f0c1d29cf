/* transformer.h - the forward and the backward pass, written once over the table of backend.h.
 *
 *   layer l:   ln1 = norm(x)                  qkv = ln1 Wqkv^T + b        atty = attention(qkv)
 *              x2 = x + atty Wo^T + b         ln2 = norm(x2)
 *              fch = ln2 Wfc^T + b            x' = x2 + activation(fch) Wproj^T + b
 *   head:      z = norm(x) U^T                value = norm(x) . valuew + valueb   (if there is a value head)
 *
 * The configuration selects layernorm or RMSNorm, GELU or a gated activation, and biases or none, and determines
 * whether the output matrix U is the embedding matrix.
 *
 * A batch is packed (batch.h). The head runs only on its target rows, and logits never exist for the whole batch. A
 * training method exchanges only small host arrays with the model: it gets the log-probabilities, entropies and values
 * of R targets and returns their gradients.
 *
 *     model_forward(&model, &work, &batch, 1.0f, &out);         // out.logp[R], out.entropy[R], out.value[R]
 *     loss = objective(out.logp, batch.targets, dlogp);        // any objective
 *     model_backward(&model, &work, &batch, 1.0f, dlogp, NULL, NULL);   // adds to the gradients of the parameters
 *
 * An objective whose dlogp does not depend on logp (maximum likelihood) uses model_forward_backward(), which computes
 * the head's logits once instead of twice.
 *
 * The four linear layers of a transformer layer are listed in the table MODEL_LINEARS, which the forward and the
 * backward pass both use. Each can have low-rank adapters, which are then trained instead of all other tensors.
 */
#ifndef LLMC_MODEL_TRANSFORMER_H
#define LLMC_MODEL_TRANSFORMER_H

#include "../base/error.h" /* Error */
#include "acts_cache.h"    /* activation_cache_copy */
#include "backend.h"       /* Acts, Backend, acts_at, Norm, ... */
#include "batch.h"         /* Batch, Segment */
#include "config.h"        /* ModelConfig, model_q_width, NORM_POST, NORM_PRE, ... */
#include "model.h"         /* Model, model_weight, model_grad, model_grad_product, ... */
#include "tensors.h"       /* TENSOR_wte, TensorInfo, TENSOR_valuew, TENSOR_wpe, ... */
#include "workspace.h"     /* work_acts, Workspace, work_floats, work_ints, ... */

// clang-format off
/*    linear    weight    bias      input  output  adapter  DoRA     projections */
#define MODEL_LINEARS(L)                                                  \
    L(qkv,      qkvw,     qkvb,     ln1,   qkv,    qkvl,    qkvu,    QKV)          \
    L(attproj,  attprojw, attprojb, atty,  att,    attl,    attu,    ATTPROJ)      \
    L(fc,       fcw,      fcb,      ln2,   fch,    fcl,     fcu,     FC)           \
    L(fcproj,   fcprojw,  fcprojb,  act,   mlp,    fcprojl, fcproju, FCPROJ)
// clang-format on

enum {
#define L(name, weight, bias, input, output, lora, dora, projections) LINEAR_##name,
    MODEL_LINEARS(L)
#undef L
        LINEAR_COUNT
};

/* The tensors and the activations of a linear layer: output = input weight^T + bias. */
typedef struct LinearInfo {
    int weight, bias, input, output;
    int lora_a, lora_b, lora_h, projections; /* of its adapters */
    int dora_m, dora_u;
} LinearInfo;

static inline const LinearInfo *model_linear(int linear) {
    static const LinearInfo info[LINEAR_COUNT] = {
#define L(name, weight, bias, input, output, lora, dora, projections)                                                  \
    {TENSOR_##weight,  TENSOR_##bias, WORK_##input,          WORK_##output,    TENSOR_##lora##a,                       \
     TENSOR_##lora##b, WORK_##lora,   LORA_OF_##projections, TENSOR_##lora##m, WORK_##dora},
        MODEL_LINEARS(L)
#undef L
    };
    return &info[linear];
}

/* The input of linear layer `linear` of layer l. Without a norm before attention and the MLP, it is the residual
 * stream. */
static inline Acts *linear_input(const Model *m, const Workspace *w, int linear, int l) {
    const bool bare = m->config.norm_place == NORM_POST;
    if (bare && linear == LINEAR_qkv) return work_x3(w, l - 1);
    if (bare && linear == LINEAR_fc) return work_x2(w, l);
    return work_acts(w, model_linear(linear)->input, l);
}

/* The output of linear layer `linear` of layer l. A norm after attention or the MLP needs its input in the backward
 * pass; otherwise these outputs share one buffer. */
static inline Acts *linear_output(const Model *m, const Workspace *w, int linear, int l) {
    const bool branch = linear == LINEAR_attproj || linear == LINEAR_fcproj;
    if (branch && (!w->train || m->config.norm_place == NORM_PRE)) return work_acts(w, WORK_delta, 0);
    return work_acts(w, model_linear(linear)->output, l);
}

/* The quantised matrix of linear layer `linear` of layer l, or NULL. */
static inline const QuantMatrix *linear_matrix(const Model *m, int linear, int l) {
    return model_blocks_of(m, model_linear(linear)->weight, l);
}

/* Whether linear layer `linear` computes with adapters. */
static inline bool linear_adapted(const Model *m, int linear) {
    return m->tensor[model_linear(linear)->lora_a].size && !m->adapter_off;
}

/* The adapters of linear layer `linear` of layer l; without the gradients. */
static inline Lora linear_lora(const Model *m, const Workspace *w, int linear, int l, int N) {
    const LinearInfo *i = model_linear(linear);
    const LoraParts p = lora_parts(&m->config, i->projections);
    Lora lora = {.rows = N,
                 .in = (int)m->tensor[i->weight].columns,
                 .rank = m->config.lora.rank,
                 .parts = p.parts,
                 .stride = (int)m->tensor[i->weight].rows,
                 .scale = m->config.lora.scale,
                 .x = linear_input(m, w, linear, l),
                 .a = model_weight(m, i->lora_a, l),
                 .b = model_weight(m, i->lora_b, l),
                 .h = work_acts(w, i->lora_h, l)};
    memcpy(lora.first, p.first, sizeof lora.first);
    memcpy(lora.count, p.count, sizeof lora.count);
    return lora;
}

/* DoRA of linear layer `linear` of layer l; without what the backward pass adds. */
static inline Dora linear_dora(const Model *m, const Workspace *w, int linear, int l, int N) {
    const LinearInfo *i = model_linear(linear);
    const LoraParts p = lora_parts(&m->config, i->projections);
    const TensorInfo *magnitude = &m->tensor[i->dora_m];
    const QuantMatrix *matrix = linear_matrix(m, linear, l);
    Dora dora = {.rows = N,
                 .in = (int)m->tensor[i->weight].columns,
                 .rank = m->config.lora.rank,
                 .parts = p.parts,
                 .stride = (int)m->tensor[i->weight].rows,
                 .scale = m->config.lora.scale,
                 .w = matrix ? NULL : model_weight(m, i->weight, l),
                 .a = model_weight(m, i->lora_a, l),
                 .b = model_weight(m, i->lora_b, l),
                 .magnitude = model_weight(m, i->dora_m, l),
                 .bias = m->tensor[i->bias].size ? model_weight(m, i->bias, l) : NULL,
                 .norm = floats_at(m->dora->norm, magnitude->offset - m->tensor[FIRST_DORA_TENSOR].offset +
                                                      (size_t)l * magnitude->columns),
                 .u = w && w->train ? work_acts(w, i->dora_u, l) : NULL};
    if (matrix) dora.matrix = *matrix;
    memcpy(dora.first, p.first, sizeof dora.first);
    memcpy(dora.count, p.count, sizeof dora.count);
    return dora;
}

/* Computes the lengths of DoRA's rows, unless they are those of the present weights. */
static inline void model_refresh_dora(const Model *m) {
    if (!m->dora || m->dora->fresh) return;
    for (int linear = 0; linear < LINEAR_COUNT; linear++)
        for (int l = 0; l < m->config.layers && m->tensor[model_linear(linear)->dora_m].size; l++) {
            const Dora dora = linear_dora(m, NULL, linear, l, 0);
            m->backend->dora_norm(m->device, &dora);
        }
    m->dora->fresh = true;
}

/* Runs linear layer `linear` of layer l on N rows, with its adapters. */
static inline void linear_forward(const Model *m, const Workspace *w, int linear, int l, int N) {
    const LinearInfo *i = model_linear(linear);
    const TensorInfo *t = &m->tensor[i->weight];
    const QuantMatrix *matrix = linear_matrix(m, linear, l);
    const Weights *bias = m->tensor[i->bias].size ? model_weight(m, i->bias, l) : NULL;
    Acts *out = linear_output(m, w, linear, l), *x = linear_input(m, w, linear, l);
    const int IC = (int)t->columns, OC = (int)t->rows;
    if (matrix) m->backend->quant_forward(m->device, out, x, matrix, bias, N, IC, OC);
    else m->backend->linear_forward(m->device, out, x, model_weight(m, i->weight, l), bias, N, IC, OC);
    if (!linear_adapted(m, linear)) return;
    Lora lora = linear_lora(m, w, linear, l, N);
    lora.out = out;
    m->backend->lora_forward(m->device, &lora);
    if (!m->dora) return;
    Dora dora = linear_dora(m, w, linear, l, N);
    dora.out = out;
    m->backend->dora_forward(m->device, &dora);
}

/* The backward pass of linear_forward(): dinput, and the gradients of weight and bias or those of the adapters. */
static inline void linear_backward(const Model *m, const Workspace *w, int linear, int l, int N, Acts *dinput,
                                   const Acts *doutput) {
    const LinearInfo *i = model_linear(linear);
    const TensorInfo *t = &m->tensor[i->weight];
    const QuantMatrix *matrix = linear_matrix(m, linear, l);
    const int IC = (int)t->columns, OC = (int)t->rows;
    if (m->dora && linear_adapted(m, linear)) {
        Dora dora = linear_dora(m, w, linear, l, N);
        dora.dout = doutput;
        dora.dscaled = work_acts(w, WORK_dscaled, 0);
        dora.dmagnitude = model_grad(m, i->dora_m, l);
        m->backend->dora_backward(m->device, &dora);
        doutput = dora.dscaled;
    }
    if (matrix) m->backend->quant_backward(m->device, dinput, doutput, matrix, N, IC, OC);
    else
        m->backend->linear_backward(m->device, dinput, model_grad_product(m, i->weight, l), model_grad(m, i->bias, l),
                                    doutput, linear_input(m, w, linear, l), model_weight(m, i->weight, l), N, IC, OC);
    if (!linear_adapted(m, linear)) return;
    Lora lora = linear_lora(m, w, linear, l, N);
    lora.dout = doutput;
    lora.dx = dinput;
    lora.da = model_grad(m, i->lora_a, l);
    lora.db = model_grad(m, i->lora_b, l);
    m->backend->lora_backward(m->device, &lora);
}

/* A norm of the model: its weights, and the activations of its backward pass. */
typedef enum { MODEL_NORM_1, MODEL_NORM_ATT, MODEL_NORM_2, MODEL_NORM_MLP, MODEL_NORM_FINAL } ModelNorm;

static inline Norm model_norm(const Model *m, const Workspace *w, ModelNorm which, int l, int N) {
    static const struct {
        int w, b, mean, rstd, out;
    } of[] = {
        // clang-format off
        [MODEL_NORM_1]     = {TENSOR_ln1w,     TENSOR_ln1b,     WORK_mean1, WORK_rstd1,    WORK_ln1},
        [MODEL_NORM_ATT]   = {TENSOR_attpostw, TENSOR_attpostw, WORK_mean1, WORK_rstd_att, WORK_x2},
        [MODEL_NORM_2]     = {TENSOR_ln2w,     TENSOR_ln2b,     WORK_mean2, WORK_rstd2,    WORK_ln2},
        [MODEL_NORM_MLP]   = {TENSOR_mlppostw, TENSOR_mlppostw, WORK_mean2, WORK_rstd_mlp, WORK_x3},
        [MODEL_NORM_FINAL] = {TENSOR_lnfw,     TENSOR_lnfb,     WORK_meanf, WORK_rstdf,    WORK_lnf},
        // clang-format on
    };
    return (Norm){.rows = N,
                  .channels = m->config.width,
                  .kind = m->config.norm,
                  .eps = m->config.norm_eps,
                  .plus_one = m->config.norm_plus_one,
                  .w = model_weight(m, of[which].w, l),
                  .b = model_weight(m, of[which].b, l),
                  .mean = work_floats(w, of[which].mean, l),
                  .rstd = work_floats(w, of[which].rstd, l),
                  .out = work_acts(w, of[which].out, l),
                  .dw = model_grad(m, of[which].w, l),
                  .db = model_grad(m, of[which].b, l)};
}

/* Computes norm `which` of layer l of x, or of x + delta, which is stored in sum. */
static inline void norm_forward(const Model *m, const Workspace *w, ModelNorm which, int l, int N, const Acts *x,
                                const Acts *delta, Acts *sum) {
    Norm n = model_norm(m, w, which, l, N);
    n.x = x;
    n.delta = delta;
    n.sum = sum;
    m->backend->norm_forward(m->device, &n);
}

/* The backward pass of norm_forward(): adds the gradient of x to dx. dout: the gradient of the norm's output. */
static inline void norm_backward(const Model *m, const Workspace *w, ModelNorm which, int l, int N, Acts *dx,
                                 const Acts *dout, const Acts *x) {
    Norm n = model_norm(m, w, which, l, N);
    n.x = x;
    n.dout = dout;
    n.dx = dx;
    m->backend->norm_backward(m->device, &n);
}

/* Adds a branch of layer l, attention (LINEAR_attproj) or the MLP (LINEAR_fcproj), to the residual stream x: sum = x +
 * norm(branch), or x + branch without a norm after it. Then computes the norm `next` of the sum, unless there is none
 * before the next branch. */
static inline void residual_forward(const Model *m, const Workspace *w, int linear, int l, int N, const Acts *x,
                                    Acts *sum, ModelNorm next, int next_layer) {
    const Acts *branch = linear_output(m, w, linear, l);
    if (m->config.norm_place == NORM_PRE) {
        norm_forward(m, w, next, next_layer, N, x, branch, sum);
        return;
    }
    Norm n = model_norm(m, w, linear == LINEAR_attproj ? MODEL_NORM_ATT : MODEL_NORM_MLP, l, N);
    n.x = branch;
    n.add = x;
    n.out = sum;
    m->backend->norm_forward(m->device, &n);
    if (m->config.norm_place == NORM_BOTH || next == MODEL_NORM_FINAL)
        norm_forward(m, w, next, next_layer, N, sum, NULL, NULL);
}

/* The gradient of a branch's output, from dx, that of the residual stream after it. It is dx itself if no norm
 * follows the branch. */
static inline Acts *residual_backward(const Model *m, const Workspace *w, int linear, int l, int N, Acts *dx) {
    if (m->config.norm_place == NORM_PRE) return dx;
    Norm n = model_norm(m, w, linear == LINEAR_attproj ? MODEL_NORM_ATT : MODEL_NORM_MLP, l, N);
    n.x = linear_output(m, w, linear, l);
    n.dout = dx;
    n.dx = work_acts(w, WORK_dbranch, 0);
    n.fresh = 1;
    m->backend->norm_backward(m->device, &n);
    return n.dx;
}

/* Adds the gradient of a branch's input, dnarrow, to dx, that of the residual stream before it, through norm
 * `which` if there is one. x: the residual stream. */
static inline void input_backward(const Model *m, const Workspace *w, ModelNorm which, int l, int N, Acts *dx,
                                  const Acts *dnarrow, const Acts *x) {
    if (m->config.norm_place == NORM_POST) m->backend->add(m->device, dx, dnarrow, (size_t)N * (size_t)m->config.width);
    else norm_backward(m, w, which, l, N, dx, dnarrow, x);
}

/* The rotation of layer l's queries and keys, and their norm. */
static inline Rotary model_rotary(const Model *m, const Workspace *w, int l, int N, Acts *qk) {
    const ModelConfig *c = &m->config;
    const bool normed = c->qk_norm != QK_NORM_NONE, still = !c->rotary || c->layer[l] & LAYER_NO_ROPE;
    const bool local = c->layer[l] & LAYER_WINDOW && model_rotation(c) > c->rotary;
    return (Rotary){
        .rows = N,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_size = c->head_size,
        .rotated = c->rotary,
        .stride = model_qkv_width(c),
        .table_stride = model_rotation(c),
        .q_group = model_q_group(c),
        .k_group = model_k_group(c),
        .plus_one = c->norm_plus_one,
        .eps = c->norm_eps,
        .before_stride = model_qk_norm_width(c),
        .table = still ? NULL : floats_at(work_floats(w, WORK_rotation, 0), local ? (size_t)c->rotary : 0),
        .qw = normed ? model_weight(m, TENSOR_qnormw, l) : NULL,
        .kw = normed ? model_weight(m, TENSOR_knormw, l) : NULL,
        .qk = qk,
        .before = normed && w->train ? work_acts(w, WORK_qk, l) : NULL,
        .rstd = normed && w->train ? work_floats(w, WORK_qk_rstd, l) : NULL,
        .dqw = model_grad(m, TENSOR_qnormw, l),
        .dkw = model_grad(m, TENSOR_knormw, l),
    };
}

static inline void rotary_forward(const Model *m, const Workspace *w, int l, int N) {
    const Rotary r = model_rotary(m, w, l, N, work_acts(w, WORK_qkv, l));
    if (r.table || r.qw) m->backend->rotary_forward(m->device, &r);
}

/* dqk: the gradients of queries and keys, in rows like those of qkv. */
static inline void rotary_backward(const Model *m, const Workspace *w, int l, int N, Acts *dqk) {
    const Rotary r = model_rotary(m, w, l, N, dqk);
    if (r.table || r.qw) m->backend->rotary_backward(m->device, &r);
}

/* Computes the activation of layer l's MLP. */
static inline void activation_forward(const Model *m, const Workspace *w, int l, int N) {
    const int F = m->config.hidden;
    Acts *act = work_acts(w, WORK_act, l), *pre = work_acts(w, WORK_fch, l);
    if (m->config.mlp == MLP_GELU) m->backend->gelu_forward(m->device, act, pre, (size_t)N * (size_t)F);
    else m->backend->gate_forward(m->device, act, pre, m->config.mlp, N, F);
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

/* Results of a forward pass, in host memory. NULL: not computed. */
typedef struct ModelOutput {
    float *logp;       /* (R) */
    float *entropy;    /* (R) nats */
    int32_t *argmax;   /* (R) */
    float *value;      /* (R) */
    float *log_square; /* (R) log sum_v p_v^2; needs logp; of model_forward() only */
} ModelOutput;

static inline Attention model_attention(const Model *m, const Workspace *w, const Batch *batch, int l) {
    const ModelConfig *c = &m->config;
    const int D = c->head_size, Q = model_qkv_width(c);
    Acts *qkv = work_acts(w, WORK_qkv, l);
    Attention a = {.rows = batch->rows,
                   .segments = batch->segments,
                   .heads = c->heads,
                   .kv_heads = c->kv_heads,
                   .head_size = D,
                   .q_stride = Q,
                   .kv_stride = Q,
                   .scale = c->score_scale > 0 ? c->score_scale : 1.0f / sqrtf((float)D),
                   .cap = c->score_cap,
                   .window = c->layer[l] & LAYER_WINDOW ? c->window : 0};
    a.segment = work_ints(w, WORK_segment);
    a.q = qkv;
    a.k = acts_at(m->backend, qkv, (size_t)model_q_width(c));
    a.v = acts_at(m->backend, qkv, (size_t)(model_q_width(c) + model_kv_width(c)));
    a.out = work_acts(w, WORK_atty, l);
    a.lse = w->train ? work_floats(w, WORK_lse, l) : NULL;
    return a;
}

/* Runs a layer from ln1 to the activation: everything except its last product. With a cache, keys and values are stored
 * in it and read from it. */
static inline void model_layer(const Model *m, const Workspace *w, const Batch *batch, const KVCache *kv, int l) {
    const Backend *b = m->backend;
    Device *d = m->device;
    const ModelConfig *c = &m->config;
    const int N = batch->rows, C = c->width, F = c->hidden, Q = model_qkv_width(c), KC = model_kv_width(c);
    linear_forward(m, w, LINEAR_qkv, l, N);
    rotary_forward(m, w, l, N);
    Attention a = model_attention(m, w, batch, l);
    if (kv) {
        const size_t at = (size_t)l * (size_t)kv->rows * (size_t)KC;
        Acts *k = acts_at(b, kv->k, at), *v = acts_at(b, kv->v, at);
        b->kv_store(d, k, v, a.k, a.v, Q, work_ints(w, WORK_slot), N, KC);
        a.k = k;
        a.v = v;
        a.kv_stride = KC;
    }
    b->attention_forward(d, &a);
    linear_forward(m, w, LINEAR_attproj, l, N);
    residual_forward(m, w, LINEAR_attproj, l, N, work_x3(w, l - 1), work_x2(w, l), MODEL_NORM_2, l);
    if (c->mlp == MLP_GELU && !linear_adapted(m, LINEAR_fc) && !m->matrix) {
        b->linear_gelu_forward(d, work_acts(w, WORK_fch, l), work_acts(w, WORK_act, l),
                               linear_input(m, w, LINEAR_fc, l), model_weight(m, TENSOR_fcw, l),
                               c->mlp_bias ? model_weight(m, TENSOR_fcb, l) : NULL, N, C, F);
    } else {
        linear_forward(m, w, LINEAR_fc, l, N);
        activation_forward(m, w, l, N);
    }
}

/* Reads the embeddings of N tokens. */
static inline void model_embed(const Model *m, const Workspace *w, int N) {
    const Backend *b = m->backend;
    const QuantMatrix *blocks = model_blocks_of(m, TENSOR_wte, 0);
    const Weights *wpe = m->tensor[TENSOR_wpe].size ? model_weight(m, TENSOR_wpe, 0) : NULL;
    Acts *out = work_acts(w, WORK_encoded, 0);
    const Ints *token = work_ints(w, WORK_token), *position = work_ints(w, WORK_position);
    const float scale = model_embed_scale(&m->config);
    const int C = m->config.width;
    if (blocks) b->quant_embed_forward(m->device, out, blocks, wpe, token, position, scale, N, C);
    else b->embed_forward(m->device, out, model_weight(m, TENSOR_wte, 0), wpe, token, position, scale, N, C);
}

/* Uploads the batch and runs the model from the tokens to the output of the final norm. If the workspace has a cache of the
 * batch's activations, they are taken from it; with a key/value cache they are put into it. */
static inline void model_trunk(const Model *m, const Workspace *w, const Batch *batch, const KVCache *kv) {
    const Backend *b = m->backend;
    Device *d = m->device;
    const ModelConfig *c = &m->config;
    const int N = batch->rows, C = c->width, L = c->layers;
    if (!m->adapter_off) model_refresh_dora(m);
    b->upload(d, work_ints(w, WORK_token), batch->tokens, (size_t)N * sizeof(int32_t));
    b->upload(d, work_ints(w, WORK_position), batch->positions, (size_t)N * sizeof(int32_t));
    b->upload(d, work_ints(w, WORK_segment), batch->segment, (size_t)batch->segments * sizeof(Segment));
    model_embed(m, w, N);
    for (int i = 0; i < (m->frequency ? model_rotation(c) / c->rotary : 0); i++)
        b->rotary_table(d, floats_at(work_floats(w, WORK_rotation, 0), (size_t)(i * c->rotary)),
                        work_ints(w, WORK_position), floats_at(m->frequency, (size_t)(i * c->rotary / 2)),
                        m->rotary_factor[i], N, c->rotary / 2, model_rotation(c));
    if (w->noise_scale) {
        b->upload(d, work_floats(w, WORK_noise, 0), w->noise_scale, (size_t)N * sizeof(float));
        b->upload(d, work_ints(w, WORK_noise_record), w->noise_record, (size_t)N * sizeof(int32_t));
        b->noise_add(d, work_acts(w, WORK_encoded, 0), work_floats(w, WORK_noise, 0), work_ints(w, WORK_noise_record),
                     work_ints(w, WORK_position), N, C, w->noise_seed, w->noise_stream);
    }
    if (w->cache && !kv) {
        for (int l = 0; l < L; l++) activation_cache_copy(w->cache, w, l, N, true);
        norm_forward(m, w, MODEL_NORM_FINAL, 0, N, work_x3(w, L - 1), NULL, NULL);
        return;
    }
    if (c->norm_place != NORM_POST) norm_forward(m, w, MODEL_NORM_1, 0, N, work_acts(w, WORK_encoded, 0), NULL, NULL);
    for (int l = 0; l < L; l++) {
        model_layer(m, w, batch, kv, l);
        linear_forward(m, w, LINEAR_fcproj, l, N);
        const bool last = l == L - 1;
        residual_forward(m, w, LINEAR_fcproj, l, N, work_x2(w, l), work_x3(w, l),
                         last ? MODEL_NORM_FINAL : MODEL_NORM_1, last ? 0 : l + 1);
        if (w->cache) activation_cache_copy(w->cache, w, l, N, false);
    }
}

/* Gathers the target rows of the final norm's output into h. */
static inline void model_targets(const Model *m, const Workspace *w, const Batch *batch) {
    const Backend *b = m->backend;
    b->upload(m->device, work_ints(w, WORK_target_row), batch->target_row, (size_t)batch->targets * sizeof(int32_t));
    b->gather_rows(m->device, work_acts(w, WORK_h, 0), work_acts(w, WORK_lnf, 0), work_ints(w, WORK_target_row),
                   batch->targets, m->config.width);
}

static inline Head model_head(const Model *m, const Workspace *w, const Batch *batch, float temperature) {
    const ModelConfig *c = &m->config;
    Head head = {.rows = batch->targets,
                 .channels = c->width,
                 .vocab = c->vocab,
                 .padded_vocab = c->padded_vocab,
                 .temperature = temperature,
                 .cap = c->logit_cap,
                 .h = work_acts(w, WORK_h, 0),
                 .weight = model_output_weights(m),
                 .matrix = model_output_blocks(m),
                 .target = work_ints(w, WORK_target),
                 .logp = work_floats(w, WORK_logp, 0)};
    return head;
}

/* The gradient of the output matrix, for the head or the divergence over this number of targets. */
static inline Floats *model_head_grad(const Model *m, int targets) {
    const int output = model_output_tensor(&m->config);
    return targets ? model_grad_product(m, output, 0) : model_grad(m, output, 0);
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
    b->upload(d, work_ints(w, WORK_target), batch->target_token, R * sizeof(int32_t));
    Head head = model_head(m, w, batch, temperature);
    head.entropy = out->entropy ? work_floats(w, WORK_entropy, 0) : NULL;
    head.argmax = out->argmax ? work_ints(w, WORK_argmax) : NULL;
    if (dlogp) {
        b->upload(d, work_floats(w, WORK_dlogp, 0), dlogp, R * sizeof(float));
        head.dlogp = work_floats(w, WORK_dlogp, 0);
        head.dh = work_acts(w, WORK_dh, 0);
        head.dweight = model_head_grad(m, batch->targets);
    }
    if (out->logp || out->entropy || out->argmax || dlogp) b->head(d, &head); /* values alone need no logits */
    if (out->logp) b->download(d, out->logp, head.logp, R * sizeof(float));
    if (out->entropy) b->download(d, out->entropy, head.entropy, R * sizeof(float));
    if (out->argmax) b->download(d, out->argmax, head.argmax, R * sizeof(int32_t));
    if (out->value) {
        assert(m->config.value_head);
        b->value_forward(d, work_floats(w, WORK_value, 0), work_acts(w, WORK_h, 0), model_weight(m, TENSOR_valuew, 0),
                         model_weight(m, TENSOR_valueb, 0), (int)R, m->config.width);
        b->download(d, out->value, work_floats(w, WORK_value, 0), R * sizeof(float));
    }
}

/* Computes log sum_v p_v^2 at each target, after model_forward_known() on the batch with the resulting logp: 2 logp minus the
 * log-probability at half the temperature, which has twice the logit and the normaliser sum_v e^(2 z_v). */
static inline void model_log_square(const Model *m, const Workspace *w, const Batch *b, float temperature,
                                    const float *logp, float *square) {
    const Head head = model_head(m, w, b, temperature / 2);
    m->backend->head(m->device, &head);
    m->backend->download(m->device, square, head.logp, (size_t)b->targets * sizeof *square);
    for (int32_t r = 0; r < b->targets; r++) square[r] = 2 * logp[r] - square[r];
}

static inline void model_forward(const Model *m, const Workspace *w, const Batch *batch, float temperature,
                                 const ModelOutput *out) {
    model_forward_known(m, w, batch, temperature, out, NULL);
    if (out->log_square) model_log_square(m, w, batch, temperature, out->logp, out->log_square);
}

/* Computes the logits of R rows h (R, C) of the head's input: out (R, V). */
static inline void model_logits_of(const Model *m, Floats *out, const Acts *h, int R) {
    const ModelConfig *c = &m->config;
    const Backend *b = m->backend;
    const QuantMatrix *blocks = model_output_blocks(m);
    if (blocks) b->quant_logits(m->device, out, h, blocks, c->logit_cap, R, c->width, c->vocab, c->padded_vocab);
    else b->logits(m->device, out, h, model_output_weights(m), c->logit_cap, R, c->width, c->vocab, c->padded_vocab);
}

/* Computes all logits of the batch's targets, for inspection: logits (R, V) on the host. */
static inline bool model_logits(const Model *m, const Workspace *w, const Batch *batch, float *logits, Error *e) {
    const ModelConfig *c = &m->config;
    const size_t bytes = (size_t)batch->targets * (size_t)c->vocab * sizeof(float);
    Floats *all = (Floats *)m->backend->alloc(m->device, bytes, "logits", e);
    if (!all) return false;
    model_trunk(m, w, batch, NULL);
    model_targets(m, w, batch);
    model_logits_of(m, all, work_acts(w, WORK_h, 0), batch->targets);
    m->backend->download(m->device, logits, all, bytes);
    m->backend->release(m->device, all);
    return model_sync(m, e);
}

/* Computes the logits of targets [first, first + n) of a batch after model_forward(), on the host: logits (n, V). device:
 * memory for them on the device. */
static inline void model_logits_part(const Model *m, const Workspace *w, int32_t first, int32_t n, Floats *device,
                                     float *logits) {
    const ModelConfig *c = &m->config;
    const Backend *b = m->backend;
    model_logits_of(m, device, acts_at(b, work_acts(w, WORK_h, 0), (size_t)first * (size_t)c->width), n);
    b->download(m->device, logits, device, (size_t)n * (size_t)c->vocab * sizeof *logits);
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

/* Whether the backward pass of layers' activations and of the linear layers after them is one operation, which computes the
 * activations again. */
static inline bool mlp_fused(const Model *m) {
    return m->backend->mlp_backward && !m->matrix && !linear_adapted(m, LINEAR_fcproj);
}

/* The backward pass of layer l's MLP from its output to its pre-activations, whose gradient is dpre. */
static inline void mlp_backward(const Model *m, const Workspace *w, int l, int N, Acts *dpre, const Acts *doutput) {
    const Backend *b = m->backend;
    const ModelConfig *c = &m->config;
    Acts *pre = work_acts(w, WORK_fch, l), *act = linear_input(m, w, LINEAR_fcproj, l);
    if (mlp_fused(m)) {
        const MlpBackward a = {.rows = N,
                               .hidden = c->hidden,
                               .width = c->width,
                               .kind = c->mlp,
                               .dout = doutput,
                               .pre = pre,
                               .w = model_weight(m, TENSOR_fcprojw, l),
                               .act = act,
                               .dpre = dpre,
                               .dw = model_grad_product(m, TENSOR_fcprojw, l),
                               .db = model_grad(m, TENSOR_fcprojb, l)};
        b->mlp_backward(m->device, &a);
        return;
    }
    Acts *dact = c->mlp == MLP_GELU ? dpre : work_acts(w, WORK_dact, 0);
    linear_backward(m, w, LINEAR_fcproj, l, N, dact, doutput);
    if (c->mlp == MLP_GELU) b->gelu_backward(m->device, dpre, pre, (size_t)N * (size_t)c->hidden);
    else b->gate_backward(m->device, dpre, dact, pre, c->mlp, N, c->hidden);
}

/* Backward pass from the head's input, whose gradient is in dh, to the embeddings. */
static inline void model_trunk_backward(const Model *m, const Workspace *w, const Batch *batch) {
    const Backend *b = m->backend;
    Device *d = m->device;
    const ModelConfig *c = &m->config;
    const int N = batch->rows, C = c->width, L = c->layers;
    Acts *dx = work_acts(w, WORK_dx, 0), *dnarrow = work_acts(w, WORK_dnarrow, 0), *dwide = work_acts(w, WORK_dwide, 0);
    const size_t narrow_bytes = (size_t)N * (size_t)C * b->act_size;
    b->zero(d, dnarrow, narrow_bytes);
    b->zero(d, dx, narrow_bytes);
    b->scatter_rows(d, dnarrow, work_acts(w, WORK_dh, 0), work_ints(w, WORK_target_row), batch->targets, C);
    norm_backward(m, w, MODEL_NORM_FINAL, 0, N, dx, dnarrow, work_x3(w, L - 1));
    for (int l = L - 1; l >= 0; l--) {
        const bool normed = c->norm_place != NORM_POST;
        if (w->recompute >= 1 && normed) norm_forward(m, w, MODEL_NORM_1, l, N, work_x3(w, l - 1), NULL, NULL);
        if (w->recompute == 1) {
            if (normed) norm_forward(m, w, MODEL_NORM_2, l, N, work_acts(w, WORK_x2, l), NULL, NULL);
            if (!mlp_fused(m)) activation_forward(m, w, l, N);
        }
        if (w->recompute == 2) {
            model_layer(m, w, batch, NULL, l);
            if (c->norm_place != NORM_PRE) linear_forward(m, w, LINEAR_fcproj, l, N);
        }
        /* x' = x2 + activation(fch) Wproj^T + b */
        mlp_backward(m, w, l, N, dwide, residual_backward(m, w, LINEAR_fcproj, l, N, dx));
        linear_backward(m, w, LINEAR_fc, l, N, dnarrow, dwide);
        input_backward(m, w, MODEL_NORM_2, l, N, dx, dnarrow, work_acts(w, WORK_x2, l));
        /* x2 = x + atty Wo^T + b */
        linear_backward(m, w, LINEAR_attproj, l, N, dnarrow, residual_backward(m, w, LINEAR_attproj, l, N, dx));
        Attention a = model_attention(m, w, batch, l);
        a.dout = dnarrow;
        a.dq = dwide;
        a.dk = acts_at(b, dwide, (size_t)model_q_width(c));
        a.dv = acts_at(b, dwide, (size_t)(model_q_width(c) + model_kv_width(c)));
        b->attention_backward(d, &a);
        rotary_backward(m, w, l, N, dwide);
        linear_backward(m, w, LINEAR_qkv, l, N, dnarrow, dwide);
        input_backward(m, w, MODEL_NORM_1, l, N, dx, dnarrow, work_x3(w, l - 1));
        if (m->layer_done) m->layer_done(m->layer_context, l);
    }
    if (m->tensor[TENSOR_wte].trained)
        b->embed_backward(d, model_grad(m, TENSOR_wte, 0), model_grad(m, TENSOR_wpe, 0), dx, work_ints(w, WORK_token),
                          work_ints(w, WORK_position), model_embed_scale(c), N, C);
    if (m->layer_done) m->layer_done(m->layer_context, -1);
}

/* Adds the gradients of the parameters, after model_forward() on the same batch. dlogp, dentropy, dvalue: derivatives
 * of the loss, (R) on the host; NULL for 0. A loss of values alone (dlogp and dentropy NULL) computes no logits. */
static inline void model_backward(const Model *m, const Workspace *w, const Batch *batch, float temperature,
                                  const float *dlogp, const float *dentropy, const float *dvalue) {
    const Backend *b = m->backend;
    Device *d = m->device;
    const size_t bytes = (size_t)batch->targets * sizeof(float);
    if (dlogp || dentropy) {
        Head head = model_head(m, w, batch, temperature);
        if (dlogp) b->upload(d, work_floats(w, WORK_dlogp, 0), dlogp, bytes);
        else b->zero(d, work_floats(w, WORK_dlogp, 0), bytes);
        if (dentropy) b->upload(d, work_floats(w, WORK_dentropy, 0), dentropy, bytes);
        head.dlogp = work_floats(w, WORK_dlogp, 0);
        head.dentropy = dentropy ? work_floats(w, WORK_dentropy, 0) : NULL;
        head.dh = work_acts(w, WORK_dh, 0);
        head.dweight = model_head_grad(m, batch->targets);
        b->head(d, &head);
    } else b->zero(d, work_acts(w, WORK_dh, 0), (size_t)batch->targets * (size_t)m->config.width * b->act_size);
    if (dvalue) {
        assert(m->config.value_head);
        b->upload(d, work_floats(w, WORK_dvalue, 0), dvalue, bytes);
        b->value_backward(d, work_acts(w, WORK_dh, 0), model_grad(m, TENSOR_valuew, 0), model_grad(m, TENSOR_valueb, 0),
                          work_floats(w, WORK_dvalue, 0), work_acts(w, WORK_h, 0), model_weight(m, TENSOR_valuew, 0),
                          batch->targets, m->config.width);
    }
    model_trunk_backward(m, w, batch);
}

/* Forward and backward pass in one, for a loss that is linear in the log-probabilities: dlogp is known in advance. */
static inline void model_forward_backward(const Model *m, const Workspace *w, const Batch *batch, float temperature,
                                          const float *dlogp, const ModelOutput *out) {
    model_forward_known(m, w, batch, temperature, out, dlogp);
    model_trunk_backward(m, w, batch);
}

/* FLOPs of an adapter's products for one row, 2 per multiply-add. */
static inline double model_lora_flops(const ModelConfig *c) {
    double sum = 0;
    TensorInfo t[TENSOR_COUNT];
    model_tensors(c, t);
    for (int i = FIRST_LORA_TENSOR; i < TENSOR_COUNT; i++) sum += 2 * (double)t[i].size;
    return sum;
}

/* FLOPs of `passes` passes, 2 per multiply-add: a forward pass is one, a backward pass two. Attention counts the computed
 * pairs only. The backward pass of weights that are not trained is one pass, without their gradient. */
static inline double model_flops(const ModelConfig *c, double rows, double targets, double pairs, double passes) {
    const double C = c->width, Q = model_qkv_width(c), A = model_q_width(c), F = c->hidden;
    const double weights =
        2 * (rows * c->layers * (C * Q + C * A + C * model_fc_width(c) + F * C) + targets * C * c->padded_vocab);
    const double all = weights + 4 * pairs * c->layers * A;
    if (!c->lora.rank) return passes * all;
    return passes * (all + rows * model_lora_flops(c)) - (passes >= 2 ? weights : 0);
}

#endif
