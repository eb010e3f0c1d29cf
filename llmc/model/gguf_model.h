/* gguf_model.h - the model in a GGUF file: its tensors in this project's layout, and its tokenizer.
 *
 * Tensors: token_embd, position_embd, output_norm, output (absent if it is that of the embeddings), and per layer N
 * blk.N.X with X = attn_norm, attn_q, attn_k, attn_v (or attn_qkv: q, k, v, one after another), attn_q_norm,
 * attn_k_norm, attn_output, post_attention_norm, ffn_norm, ffn_gate, ffn_up (Phi 3: gate and up), ffn_down and
 * post_ffw_norm, each with `.weight` and where the model has them `.bias`; matrices are (out, in) as in tensors.h.
 * A file with another tensor, without one of these or with another shape is refused.
 *
 * llama.cpp rotates channels 2j and 2j + 1 in llama and smollm3, this project channels j and j + D/2: row 2j + i of a
 * head in the file is row i D/2 + j of the model's (i = 0, 1; conversion/llama.py, permute). Norms of Gemma are stored
 * with 1 added.
 *
 *     Gguf g;
 *     ModelConfig config;
 *     GgufTokenizer tokenizer;
 *     if (!gguf_open(&g, "model.gguf", e)) return false;
 *     GgufPut put = NULL;                             // stores elements of a tensor (model_gguf.h has one for a Model)
 *     bool ok = gguf_config(&g, &config, e) && gguf_load(&g, &config, put, &model, e) && gguf_tokenizer(&g, &tokenizer, e);
 *     gguf_close(&g);                                 // after the last use of the tokenizer's texts
 */
#ifndef LLMC_MODEL_GGUF_MODEL_H
#define LLMC_MODEL_GGUF_MODEL_H

#include "../base/error.h" /* Error, error_set, xcalloc, xmalloc */
#include "../base/text.h"  /* TextSlice */
#include "backend.h"       /* QuantMatrix, QUANT_F32, MLP_GELU, QuantType */
#include "config.h"        /* ModelConfig, POSITION_ROTARY, model_kv_width, model_q_width */
#include "gguf.h"          /* Gguf, GgufTensor, gguf_is, GGUF_PIECE, ... */
#include "gguf_config.h"   /* gguf_has, gguf_architecture_of, gguf_read_config */
#include "model.h"         /* MODEL_CHUNK */
#include "quantized.h"     /* quant_bytes, quant_info, quant_decode */
#include "tensors.h"       /* TENSOR_COUNT, TENSOR_qkvb, TENSOR_qkvw, TENSOR_fcb, ... */

/* ---- the tensors of a file and those of the model ---------------------------------------------------------------- */

/* A tensor of the file, or a part of its rows, and the rows of the model's tensor that it is. A vector has as many rows
 * of one column as it has elements. */
typedef struct GgufPart {
    char name[GGUF_NAME_MAX];
    int tensor, layer;
    size_t first, rows, columns;  /* in the model's tensor */
    size_t file_first, file_rows; /* the part's first row in the file's tensor, and all rows of that */
    size_t head;                  /* rows of a head whose rows are permuted; 0: they are not */
    bool vector, plus_one;
} GgufPart;

typedef struct GgufParts {
    GgufPart *part;
    size_t count;
} GgufParts;

typedef enum { GGUF_WHOLE, GGUF_Q, GGUF_K, GGUF_V, GGUF_GATE, GGUF_UP } GgufRange;

/* Rows of a range of a fused tensor, the channels of its bias. */
static inline void gguf_range(const ModelConfig *c, GgufRange range, size_t all, size_t *first, size_t *rows) {
    const size_t q = (size_t)model_q_width(c), kv = (size_t)model_kv_width(c), f = (size_t)c->hidden;
    *first = range == GGUF_K ? q : range == GGUF_V ? q + kv : range == GGUF_UP ? f : 0;
    *rows = range == GGUF_WHOLE ? all : range == GGUF_Q ? q : range == GGUF_GATE || range == GGUF_UP ? f : kv;
}

/* Appends the part `range` of a tensor with all its rows in the file under `name`, or under a name of its own. */
static inline void gguf_add_part(GgufParts *p, const ModelConfig *c, const TensorInfo *tensors, int tensor, int layer,
                                 GgufRange range, const char *name, bool fused) {
    const TensorInfo *t = &tensors[tensor];
    const bool matrix = tensor == TENSOR_wte || tensor == TENSOR_wpe || tensor == TENSOR_qkvw ||
                        tensor == TENSOR_attprojw || tensor == TENSOR_fcw || tensor == TENSOR_fcprojw ||
                        tensor == TENSOR_headw;
    const bool bias = tensor == TENSOR_ln1b || tensor == TENSOR_qkvb || tensor == TENSOR_attprojb ||
                      tensor == TENSOR_ln2b || tensor == TENSOR_fcb || tensor == TENSOR_fcprojb ||
                      tensor == TENSOR_lnfb;
    const size_t all = tensor == TENSOR_wte || tensor == TENSOR_headw ? (size_t)c->vocab
                       : matrix                                       ? t->rows
                                                                      : t->columns;
    if (!t->size) return;
    GgufPart *part = &p->part[p->count++];
    *part = (GgufPart){.tensor = tensor,
                       .layer = layer < 0 ? 0 : layer,
                       .columns = matrix ? t->columns : 1,
                       .vector = !matrix,
                       .plus_one = c->norm_plus_one && !matrix && !bias};
    gguf_range(c, range, all, &part->first, &part->rows);
    part->file_first = fused ? part->first : 0;
    part->file_rows = fused ? all : part->rows;
    if ((range == GGUF_Q || range == GGUF_K) && gguf_architecture_of(c->family)->permuted)
        part->head = (size_t)c->head_size;
    if (layer < 0) snprintf(part->name, sizeof part->name, "%s.%s", name, bias ? "bias" : "weight");
    else snprintf(part->name, sizeof part->name, "blk.%d.%s.%s", layer, name, bias ? "bias" : "weight");
}

/* The tensors of a layer. */
static inline void gguf_layer_parts(GgufParts *p, const ModelConfig *c, const TensorInfo *t, int l, bool fused_qkv,
                                    bool fused_mlp) {
    // clang-format off
    const struct {
        const char *name;
        int weight, bias; /* TENSOR_COUNT: none */
        GgufRange range;
        bool fused, used;
    } all[] = {{"attn_norm",           TENSOR_ln1w,     TENSOR_ln1b,     GGUF_WHOLE, false, true},
               {"attn_qkv",            TENSOR_qkvw,     TENSOR_COUNT,    GGUF_Q,     true,  fused_qkv},
               {"attn_qkv",            TENSOR_qkvw,     TENSOR_COUNT,    GGUF_K,     true,  fused_qkv},
               {"attn_qkv",            TENSOR_qkvw,     TENSOR_COUNT,    GGUF_V,     true,  fused_qkv},
               {"attn_qkv",            TENSOR_COUNT,    TENSOR_qkvb,     GGUF_Q,     true,  fused_qkv},
               {"attn_qkv",            TENSOR_COUNT,    TENSOR_qkvb,     GGUF_K,     true,  fused_qkv},
               {"attn_qkv",            TENSOR_COUNT,    TENSOR_qkvb,     GGUF_V,     true,  fused_qkv},
               {"attn_q",              TENSOR_qkvw,     TENSOR_qkvb,     GGUF_Q,     false, !fused_qkv},
               {"attn_k",              TENSOR_qkvw,     TENSOR_qkvb,     GGUF_K,     false, !fused_qkv},
               {"attn_v",              TENSOR_qkvw,     TENSOR_qkvb,     GGUF_V,     false, !fused_qkv},
               {"attn_q_norm",         TENSOR_qnormw,   TENSOR_COUNT,    GGUF_WHOLE, false, true},
               {"attn_k_norm",         TENSOR_knormw,   TENSOR_COUNT,    GGUF_WHOLE, false, true},
               {"attn_output",         TENSOR_attprojw, TENSOR_attprojb, GGUF_WHOLE, false, true},
               {"post_attention_norm", TENSOR_attpostw, TENSOR_COUNT,    GGUF_WHOLE, false, true},
               {"ffn_norm",            TENSOR_ln2w,     TENSOR_ln2b,     GGUF_WHOLE, false, true},
               {"ffn_gate",            TENSOR_fcw,      TENSOR_fcb,      GGUF_GATE,  false, !fused_mlp},
               {"ffn_up",              TENSOR_fcw,      TENSOR_fcb,      GGUF_UP,    false, !fused_mlp},
               {"ffn_up",              TENSOR_fcw,      TENSOR_fcb,      GGUF_WHOLE, false, fused_mlp},
               {"ffn_down",            TENSOR_fcprojw,  TENSOR_fcprojb,  GGUF_WHOLE, false, true},
               {"post_ffw_norm",       TENSOR_mlppostw, TENSOR_COUNT,    GGUF_WHOLE, false, true}};
    // clang-format on
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!all[i].used) continue;
        if (all[i].weight < TENSOR_COUNT)
            gguf_add_part(p, c, t, all[i].weight, l, all[i].range, all[i].name, all[i].fused);
        if (all[i].bias < TENSOR_COUNT) gguf_add_part(p, c, t, all[i].bias, l, all[i].range, all[i].name, all[i].fused);
    }
}

/* Returns all parts, in the order in which a file is written; the caller frees `part`. */
static inline GgufParts gguf_parts(const ModelConfig *c, bool fused_qkv) {
    enum { PER_LAYER = 32, OTHERS = 5 };
    const bool fused_mlp = c->mlp == MLP_GELU || gguf_architecture_of(c->family)->fused_mlp;
    TensorInfo t[TENSOR_COUNT];
    GgufParts p = {0};
    model_tensors(c, t);
    p.part = (GgufPart *)xcalloc((size_t)c->layers * PER_LAYER + OTHERS, sizeof *p.part);
    gguf_add_part(&p, c, t, TENSOR_wte, -1, GGUF_WHOLE, "token_embd", false);
    gguf_add_part(&p, c, t, TENSOR_wpe, -1, GGUF_WHOLE, "position_embd", false);
    for (int l = 0; l < c->layers; l++) gguf_layer_parts(&p, c, t, l, fused_qkv, fused_mlp);
    gguf_add_part(&p, c, t, TENSOR_lnfw, -1, GGUF_WHOLE, "output_norm", false);
    gguf_add_part(&p, c, t, TENSOR_lnfb, -1, GGUF_WHOLE, "output_norm", false);
    gguf_add_part(&p, c, t, TENSOR_headw, -1, GGUF_WHOLE, "output", false);
    return p;
}

/* Copies whole heads of `head` rows of row_bytes from the order of the file, in which a pair's two rows follow one another,
 * to that of the model, or back. */
static inline void gguf_permute(const GgufPart *p, const void *from, void *to, size_t rows, size_t row_bytes,
                                bool to_model) {
    for (size_t r = 0; r < rows; r++) {
        const size_t within = r % p->head, half = p->head / 2, i = within / half, j = within % half;
        const size_t file = r - within + 2 * j + i;
        memcpy((char *)to + (to_model ? r : file) * row_bytes, (const char *)from + (to_model ? file : r) * row_bytes,
               row_bytes);
    }
}

/* Rows that are copied through the host at a time, whole heads if rows are permuted. */
static inline size_t gguf_chunk_rows(const GgufPart *p, size_t done) {
    const size_t unit = p->head ? p->head : 1, fit = MODEL_CHUNK / (unit * p->columns) * unit;
    const size_t rows = fit ? fit : unit;
    return p->rows - done < rows ? p->rows - done : rows;
}

/* Floats that a buffer for chunks of any part needs. */
static inline size_t gguf_largest_chunk(const GgufParts *p) {
    size_t most = 0;
    for (size_t i = 0; i < p->count; i++) {
        const size_t n = gguf_chunk_rows(&p->part[i], 0) * p->part[i].columns;
        if (n > most) most = n;
    }
    return most;
}

/* Checks the shape of the tensor of a part and returns it, or NULL. */
static inline const GgufTensor *gguf_part_tensor(const Gguf *g, const GgufPart *p, Error *e) {
    const GgufTensor *t = gguf_tensor(g, p->name);
    if (!t) {
        error_set(e, "%s: there is no tensor %s", g->name, p->name);
        return NULL;
    }
    const size_t rows = p->vector ? 1 : p->file_rows, columns = p->vector ? p->file_rows : p->columns;
    if (t->ne[0] != columns || t->ne[1] != rows || t->ne[2] != 1 || t->ne[3] != 1) {
        error_set(e, "%s: tensor %s has the shape (%zu, %zu, %zu, %zu), expected (%zu, %zu)", g->name, p->name,
                  t->ne[0], t->ne[1], t->ne[2], t->ne[3], columns, rows);
        return NULL;
    }
    if (p->vector && quant_info(t->type)->values > 1) {
        error_set(e, "%s: tensor %s is a vector of type %s, expected F32", g->name, p->name, quant_info(t->type)->name);
        return NULL;
    }
    return t;
}

/* Checks that the model has all tensors of the file. */
static inline bool gguf_check_tensors(const Gguf *g, const GgufParts *p, const ModelConfig *c, Error *e) {
    bool *used = (bool *)xcalloc(g->tensor_count, sizeof *used), ok = true;
    for (size_t i = 0; i < p->count; i++) {
        const GgufTensor *t = gguf_tensor(g, p->part[i].name);
        if (t) used[t - g->tensors] = true;
    }
    for (size_t i = 0; ok && i < g->tensor_count; i++) {
        const TextSlice name = g->tensors[i].name;
        const bool rope = c->position == POSITION_ROTARY &&
                          (gguf_is(name, "rope_freqs.weight") || gguf_is(name, "rope_factors_long.weight") ||
                           gguf_is(name, "rope_factors_short.weight"));
        if (used[i] || rope || (c->tied && gguf_is(name, "output.weight"))) continue;
        ok = error_set(e, "%s: tensor %.*s is not one of a model of this architecture", g->name, GGUF_SHOWN(name));
    }
    free(used);
    return ok;
}

/* Reads the configuration of a file's model and checks that the file has exactly the tensors of such a model, so that a
 * model of this configuration is not much larger than the file. */
static inline bool gguf_config(const Gguf *g, ModelConfig *c, Error *e) {
    if (!gguf_read_config(g, c, e)) return false;
    const GgufParts p = gguf_parts(c, gguf_has(g, "blk.0.attn_qkv.weight"));
    bool ok = gguf_check_tensors(g, &p, c, e);
    for (size_t i = 0; ok && i < p.count; i++) ok = gguf_part_tensor(g, &p.part[i], e) != NULL;
    free(p.part);
    return ok;
}

/* ---- loading ---------------------------------------------------------------------------------------------------- */

/* Stores elements first ... first + n - 1 of a layer of a tensor of the model (TENSOR_...; layer 0 if it has no layers). */
typedef bool (*GgufPut)(void *context, int tensor, int layer, size_t first, const float *values, size_t n, Error *e);

/* Is offered rows first ... first + rows - 1 of a matrix as they are in the file; returns false for those that it does not
 * store, whose values GgufPut then gets. */
typedef bool (*GgufPutRows)(void *context, int tensor, int layer, size_t first, QuantType type, const void *blocks,
                            size_t rows);

/* Decodes n elements from element `first` of a tensor, whole blocks. */
static inline void gguf_decode(const GgufTensor *t, size_t first, float *out, size_t n) {
    const uint8_t *from = t->data + quant_bytes(t->type, first);
#pragma omp parallel for schedule(static) if (n > 4 * GGUF_PIECE)
    for (size_t at = 0; at < n; at += GGUF_PIECE)
        quant_decode(t->type, from + quant_bytes(t->type, at), out + at, n - at < GGUF_PIECE ? n - at : GGUF_PIECE);
}

/* Offers `rows` rows of a part from row `done` on to put_rows. */
static inline bool gguf_offer_rows(const GgufTensor *t, const GgufPart *p, size_t done, size_t rows, void *buffer,
                                   GgufPutRows put_rows, void *context) {
    const size_t row_bytes = quant_bytes(t->type, p->columns);
    const uint8_t *blocks = t->data + (p->file_first + done) * row_bytes;
    if (!put_rows || p->vector) return false;
    if (p->head) gguf_permute(p, blocks, buffer, rows, row_bytes, true);
    return put_rows(context, p->tensor, p->layer, p->first + done, t->type, p->head ? buffer : blocks, rows);
}

/* Hands all rows of a part to put_rows or `put`. buffer: two chunks. */
static inline bool gguf_load_part(const Gguf *g, const GgufPart *p, float *buffer, size_t chunk, GgufPut put,
                                  GgufPutRows put_rows, void *context, Error *e) {
    const GgufTensor *t = gguf_part_tensor(g, p, e);
    if (!t) return false;
    for (size_t done = 0; done < p->rows;) {
        const size_t rows = gguf_chunk_rows(p, done), n = rows * p->columns;
        float *values = buffer;
        if (gguf_offer_rows(t, p, done, rows, buffer, put_rows, context)) {
            done += rows;
            continue;
        }
        gguf_decode(t, (p->file_first + done) * p->columns, values, n);
        if (p->head) {
            values = buffer + chunk;
            gguf_permute(p, buffer, values, rows, p->columns * sizeof *values, true);
        }
        for (size_t i = 0; p->plus_one && i < n; i++) values[i] -= 1;
        if (!put(context, p->tensor, p->layer, (p->first + done) * p->columns, values, n, e)) return false;
        done += rows;
    }
    return true;
}

/* Hands zeros for the rows of the embeddings and of the output matrix beyond the vocabulary to `put`. */
static inline bool gguf_load_padding(const ModelConfig *c, GgufPut put, void *context, Error *e) {
    const size_t first = (size_t)c->vocab * (size_t)c->width, n = (size_t)c->padded_vocab * (size_t)c->width - first;
    float *zeros = (float *)xcalloc(n, sizeof *zeros);
    const bool ok = !n || (put(context, TENSOR_wte, 0, first, zeros, n, e) &&
                           (c->tied || put(context, TENSOR_headw, 0, first, zeros, n, e)));
    free(zeros);
    return ok;
}

/* Reads all tensors of a file with the configuration c of gguf_config(): each element of the model's tensors but those of
 * the value head is handed to put_rows (NULL: none) or `put` once. Fails if `put` does. */
static inline bool gguf_load_rows(const Gguf *g, const ModelConfig *c, GgufPut put, GgufPutRows put_rows, void *context,
                                  Error *e) {
    const GgufParts p = gguf_parts(c, gguf_has(g, "blk.0.attn_qkv.weight"));
    const size_t chunk = gguf_largest_chunk(&p);
    float *buffer = (float *)xmalloc(2 * chunk * sizeof *buffer);
    bool ok = true;
    for (size_t i = 0; ok && i < p.count; i++)
        ok = gguf_load_part(g, &p.part[i], buffer, chunk, put, put_rows, context, e);
    free(buffer);
    free(p.part);
    return ok && gguf_load_padding(c, put, context, e);
}

static inline bool gguf_load(const Gguf *g, const ModelConfig *c, GgufPut put, void *context, Error *e) {
    return gguf_load_rows(g, c, put, NULL, context, e);
}

/* Gives the rows of the embeddings and of the output matrix beyond the vocabulary, which no file has, a range of their own:
 * as floats, which can also hold tokens that are added. */
static inline void gguf_plan_padding(const ModelConfig *c, QuantMatrix *plan) {
    if (c->padded_vocab == c->vocab) return;
    for (int i = LINEAR_MATRICES; i < MATRIX_COUNT; i++) {
        QuantMatrix *q = &plan[i * c->layers];
        if (!q->parts) continue;
        q->type[q->parts] = QUANT_F32;
        q->rows[q->parts++] = c->padded_vocab - c->vocab;
    }
}

/* Returns the types of all matrices as the file has them (MATRIX_COUNT, L), in new memory; NULL if all are float32. c: of
 * gguf_config(). */
static inline QuantMatrix *gguf_matrices(const Gguf *g, const ModelConfig *c, Error *e) {
    const GgufParts p = gguf_parts(c, gguf_has(g, "blk.0.attn_qkv.weight"));
    QuantMatrix *plan = (QuantMatrix *)xcalloc((size_t)(MATRIX_COUNT * c->layers), sizeof *plan);
    bool ok = true, blocks = false;
    for (size_t i = 0; ok && i < p.count; i++) {
        const int matrix = tensor_matrix(p.part[i].tensor);
        const GgufTensor *t = gguf_part_tensor(g, &p.part[i], e);
        ok = t != NULL;
        if (!ok || matrix < 0) continue;
        QuantMatrix *q = &plan[matrix * c->layers + p.part[i].layer];
        q->type[q->parts] = (int32_t)t->type;
        q->rows[q->parts++] = (int32_t)p.part[i].rows; /* in the order of the model's rows */
        blocks |= t->type != QUANT_F32;
    }
    free(p.part);
    if (ok && blocks) {
        gguf_plan_padding(c, plan);
        return plan;
    }
    if (ok) error_set(e, "%s: its weights are all float32: --quantize keep has nothing to keep", g->name);
    free(plan);
    return NULL;
}

/* ---- the tokenizer ---------------------------------------------------------------------------------------------- */

typedef struct GgufTokenizer {
    TextSlice model; /* "gpt2": byte-level BPE with merges; "llama": SentencePiece with scores; "" if there is none */
    TextSlice pre;   /* name of the pattern that splits texts, or "" */
    TextSlice *tokens;
    int32_t *types; /* GGUF_TOKEN_..., or NULL */
    float *scores;  /* or NULL */
    size_t count;
    TextSlice *merges; /* "a b" */
    size_t merge_count;
    int32_t bos, eos, eot, eom, unknown, padding; /* ids; -1: not given */
    int add_bos, add_eos, add_space_prefix;       /* 0, 1; -1: not given */
    TextSlice chat_template;                      /* text is NULL if there is none */
} GgufTokenizer;

static inline void gguf_tokenizer_free(GgufTokenizer *t) {
    free(t->tokens), free(t->types), free(t->scores), free(t->merges);
    *t = (GgufTokenizer){0};
}

static const char *const gguf_id_key[] = {"tokenizer.ggml.bos_token_id",     "tokenizer.ggml.eos_token_id",
                                          "tokenizer.ggml.eot_token_id",     "tokenizer.ggml.eom_token_id",
                                          "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"};
static const char *const gguf_add_key[] = {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
                                           "tokenizer.ggml.add_space_prefix"};
enum { GGUF_IDS = 6, GGUF_ADDS = 3 };

static inline bool gguf_read_tokens(const Gguf *g, GgufTokenizer *t, Error *e) {
    size_t types = 0, scores = 0;
    if (!gguf_get_texts(g, "tokenizer.ggml.tokens", &t->tokens, &t->count, e) ||
        !gguf_get_integers(g, "tokenizer.ggml.token_type", &t->types, &types, e) ||
        !gguf_get_numbers(g, "tokenizer.ggml.scores", &t->scores, &scores, e) ||
        !gguf_get_texts(g, "tokenizer.ggml.merges", &t->merges, &t->merge_count, e))
        return false;
    if (t->count > INT32_MAX || (t->types && types != t->count) || (t->scores && scores != t->count))
        return error_set(e, "%s: the tokenizer has %zu tokens, but %zu types and %zu scores", g->name, t->count, types,
                         scores);
    return true;
}

static inline bool gguf_read_ids(const Gguf *g, GgufTokenizer *t, Error *e) {
    int32_t *const ids[GGUF_IDS] = {&t->bos, &t->eos, &t->eot, &t->eom, &t->unknown, &t->padding};
    int *const adds[GGUF_ADDS] = {&t->add_bos, &t->add_eos, &t->add_space_prefix};
    for (int i = 0; i < GGUF_IDS; i++) {
        int64_t id = -1;
        /* some files give the id 2^32 - 1 for "none" */
        if (!gguf_get_integer(g, gguf_id_key[i], -1, UINT32_MAX, &id, e)) return false;
        if (id == UINT32_MAX) id = -1;
        if (id >= (int64_t)t->count)
            return error_set(e, "%s: entry %s is %lld, but there are %zu tokens", g->name, gguf_id_key[i],
                             (long long)id, t->count);
        *ids[i] = (int32_t)id;
    }
    for (int i = 0; i < GGUF_ADDS; i++) {
        bool add = false;
        if (!gguf_get_flag(g, gguf_add_key[i], &add, e)) return false;
        *adds[i] = gguf_find(g, gguf_add_key[i]) ? add : -1;
    }
    return true;
}

/* Reads the tokenizer and the chat template. A file without a tokenizer gives one without tokens. */
static inline bool gguf_tokenizer(const Gguf *g, GgufTokenizer *t, Error *e) {
    *t = (GgufTokenizer){.model = {"", 0}, .pre = {"", 0}};
    if (gguf_get_text(g, "tokenizer.ggml.model", &t->model, e) && gguf_get_text(g, "tokenizer.ggml.pre", &t->pre, e) &&
        gguf_get_text(g, "tokenizer.chat_template", &t->chat_template, e) && gguf_read_tokens(g, t, e) &&
        gguf_read_ids(g, t, e))
        return true;
    gguf_tokenizer_free(t);
    return false;
}

#endif
