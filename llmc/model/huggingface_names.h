/* huggingface_names.h - the names and shapes of a model's tensors in Hugging Face's files.
 *
 * A HuggingfacePart is one tensor of a file and the range of the model's elements that it holds. The three matrices of
 * queries, keys and values, and the two of gates and values of the MLP, are row ranges of one tensor of tensors.h;
 * Phi-3 stores these tensors whole, as here. GPT-2's four matrices per layer are stored as (in, out) (its class Conv1D)
 * and are transposed. Embeddings and the output matrix have V rows in the file; the padding rows are 0.
 *
 * `post_attention_layernorm` is the norm before the MLP in files like Llama's, and the norm of attention's output in
 * those of OLMo 2 and Gemma.
 *
 * Names begin with a prefix, `transformer.` (GPT-2) or `model.`, which files of a model without a head lack; the output
 * matrix and the head of a reward model have none.
 *
 *     HuggingfaceParts p = huggingface_parts(&config, "model.");
 *     for (size_t i = 0; i < p.count; i++) printf("%s\n", p.part[i].name);     // model.embed_tokens.weight, ...
 *     huggingface_parts_free(&p);
 */
#ifndef LLMC_MODEL_HUGGINGFACE_NAMES_H
#define LLMC_MODEL_HUGGINGFACE_NAMES_H

#include "../base/error.h" /* xcalloc */
#include "../base/text.h"  /* text_format, TextBuffer */
#include "config.h"        /* FAMILY_GPT2, ModelConfig, Family, FAMILY_GEMMA2, ... */
#include "tensors.h"       /* TENSOR_qkvw, TENSOR_fcw, TENSOR_headw, TENSOR_qkvb, ... */

typedef struct HuggingfacePart {
    char *name;
    int tensor;           /* TENSOR_... */
    size_t at;            /* first element in the model */
    size_t rows, columns; /* in the model: (out, in); a vector has one row */
    bool vector;          /* one dimension in the file */
    bool transposed;      /* (in, out) in the file */
} HuggingfacePart;

typedef struct HuggingfaceParts {
    HuggingfacePart *part; /* in the order of the model's layers */
    size_t count;
} HuggingfaceParts;

static inline void huggingface_parts_free(HuggingfaceParts *p) {
    for (size_t i = 0; i < p->count; i++) free(p->part[i].name);
    free(p->part);
    *p = (HuggingfaceParts){0};
}

/* Ways of naming, and which part of a tensor a name stands for. */
enum { NAMES_GPT2, NAMES_LLAMA, NAMES_OLMO2, NAMES_GEMMA, NAMES_PHI3, NAMES_COUNT };
typedef enum { PART_WHOLE, PART_TURNED, PART_Q, PART_K, PART_V, PART_GATE, PART_UP } HuggingfacePiece;

typedef struct HuggingfaceName {
    int tensor;
    HuggingfacePiece piece;
    const char *name[NAMES_COUNT]; /* without the layer's prefix; NULL: there is no such tensor */
} HuggingfaceName;

// clang-format off
#define LLAMA_ALL(name) NULL, name, name, name, name
#define LLAMA_APART(name) NULL, name, name, name, NULL
#define FUSED(gpt2, phi3) gpt2, NULL, NULL, NULL, phi3
static const HuggingfaceName huggingface_names[] = {
    {TENSOR_wte,      PART_WHOLE,  {"wte.weight", "embed_tokens.weight", "embed_tokens.weight", "embed_tokens.weight", "embed_tokens.weight"}},
    {TENSOR_wpe,      PART_WHOLE,  {"wpe.weight"}},
    {TENSOR_ln1w,     PART_WHOLE,  {"ln_1.weight", "input_layernorm.weight", NULL, "input_layernorm.weight", "input_layernorm.weight"}},
    {TENSOR_ln1b,     PART_WHOLE,  {"ln_1.bias"}},
    {TENSOR_qkvw,     PART_TURNED, {"attn.c_attn.weight"}},
    {TENSOR_qkvb,     PART_WHOLE,  {FUSED("attn.c_attn.bias", "self_attn.qkv_proj.bias")}},
    {TENSOR_qkvw,     PART_WHOLE,  {FUSED(NULL, "self_attn.qkv_proj.weight")}},
    {TENSOR_qkvw,     PART_Q,      {LLAMA_APART("self_attn.q_proj.weight")}},
    {TENSOR_qkvw,     PART_K,      {LLAMA_APART("self_attn.k_proj.weight")}},
    {TENSOR_qkvw,     PART_V,      {LLAMA_APART("self_attn.v_proj.weight")}},
    {TENSOR_qkvb,     PART_Q,      {LLAMA_APART("self_attn.q_proj.bias")}},
    {TENSOR_qkvb,     PART_K,      {LLAMA_APART("self_attn.k_proj.bias")}},
    {TENSOR_qkvb,     PART_V,      {LLAMA_APART("self_attn.v_proj.bias")}},
    {TENSOR_qnormw,   PART_WHOLE,  {LLAMA_APART("self_attn.q_norm.weight")}},
    {TENSOR_knormw,   PART_WHOLE,  {LLAMA_APART("self_attn.k_norm.weight")}},
    {TENSOR_attprojw, PART_TURNED, {"attn.c_proj.weight"}},
    {TENSOR_attprojw, PART_WHOLE,  {LLAMA_ALL("self_attn.o_proj.weight")}},
    {TENSOR_attprojb, PART_WHOLE,  {"attn.c_proj.bias", "self_attn.o_proj.bias", "self_attn.o_proj.bias", "self_attn.o_proj.bias", "self_attn.o_proj.bias"}},
    {TENSOR_attpostw, PART_WHOLE,  {NULL, NULL, "post_attention_layernorm.weight", "post_attention_layernorm.weight", NULL}},
    {TENSOR_ln2w,     PART_WHOLE,  {"ln_2.weight", "post_attention_layernorm.weight", NULL, "pre_feedforward_layernorm.weight", "post_attention_layernorm.weight"}},
    {TENSOR_ln2b,     PART_WHOLE,  {"ln_2.bias"}},
    {TENSOR_fcw,      PART_TURNED, {"mlp.c_fc.weight"}},
    {TENSOR_fcw,      PART_WHOLE,  {FUSED(NULL, "mlp.gate_up_proj.weight")}},
    {TENSOR_fcw,      PART_GATE,   {LLAMA_APART("mlp.gate_proj.weight")}},
    {TENSOR_fcw,      PART_UP,     {LLAMA_APART("mlp.up_proj.weight")}},
    {TENSOR_fcb,      PART_WHOLE,  {FUSED("mlp.c_fc.bias", "mlp.gate_up_proj.bias")}},
    {TENSOR_fcb,      PART_GATE,   {LLAMA_APART("mlp.gate_proj.bias")}},
    {TENSOR_fcb,      PART_UP,     {LLAMA_APART("mlp.up_proj.bias")}},
    {TENSOR_fcprojw,  PART_TURNED, {"mlp.c_proj.weight"}},
    {TENSOR_fcprojw,  PART_WHOLE,  {LLAMA_ALL("mlp.down_proj.weight")}},
    {TENSOR_fcprojb,  PART_WHOLE,  {"mlp.c_proj.bias", "mlp.down_proj.bias", "mlp.down_proj.bias", "mlp.down_proj.bias", "mlp.down_proj.bias"}},
    {TENSOR_mlppostw, PART_WHOLE,  {NULL, NULL, "post_feedforward_layernorm.weight", "post_feedforward_layernorm.weight", NULL}},
    {TENSOR_lnfw,     PART_WHOLE,  {"ln_f.weight", "norm.weight", "norm.weight", "norm.weight", "norm.weight"}},
    {TENSOR_lnfb,     PART_WHOLE,  {"ln_f.bias"}},
    {TENSOR_headw,    PART_WHOLE,  {"lm_head.weight", "lm_head.weight", "lm_head.weight", "lm_head.weight", "lm_head.weight"}},
    {TENSOR_valuew,   PART_WHOLE,  {"score.weight", "score.weight", "score.weight", "score.weight", "score.weight"}}};
#undef LLAMA_ALL
#undef LLAMA_APART
#undef FUSED
// clang-format on

static inline int huggingface_scheme(Family family) {
    switch (family) {
    case FAMILY_GPT2: return NAMES_GPT2;
    case FAMILY_OLMO2: return NAMES_OLMO2;
    case FAMILY_GEMMA2:
    case FAMILY_GEMMA3: return NAMES_GEMMA;
    case FAMILY_PHI3: return NAMES_PHI3;
    default: return NAMES_LLAMA;
    }
}

/* The prefix that transformers writes. */
static inline const char *huggingface_prefix(Family family) {
    return family == FAMILY_GPT2 ? "transformer." : "model.";
}

/* The rows of the tensor (or columns of a bias) that a name stands for. */
static inline void huggingface_piece(const ModelConfig *c, HuggingfacePiece piece, size_t all, size_t *first,
                                     size_t *count) {
    const size_t q = (size_t)model_q_width(c), kv = (size_t)model_kv_width(c), hidden = (size_t)c->hidden;
    *first = piece == PART_K ? q : piece == PART_V ? q + kv : piece == PART_UP ? hidden : 0;
    *count = piece == PART_Q                          ? q
             : piece == PART_K || piece == PART_V     ? kv
             : piece == PART_GATE || piece == PART_UP ? hidden
                                                      : all;
}

static inline bool huggingface_is_vector(int tensor) {
    switch (tensor) {
    case TENSOR_wte:
    case TENSOR_wpe:
    case TENSOR_qkvw:
    case TENSOR_attprojw:
    case TENSOR_fcw:
    case TENSOR_fcprojw:
    case TENSOR_headw:
    case TENSOR_valuew: return false;
    default: return true;
    }
}

/* One tensor of the file. layer: -1 for tensors that are not per layer. */
static inline HuggingfacePart huggingface_part(const ModelConfig *c, const TensorInfo *info, const HuggingfaceName *n,
                                               const char *prefix, int layer) {
    const TensorInfo *t = &info[n->tensor];
    HuggingfacePart p = {.tensor = n->tensor, .vector = huggingface_is_vector(n->tensor)};
    TextBuffer name = {0};
    const bool bare = n->tensor == TENSOR_headw || n->tensor == TENSOR_valuew;
    const char *text = n->name[huggingface_scheme(c->family)];
    size_t first;
    if (layer < 0) text_format(&name, "%s%s", bare ? "" : prefix, text);
    else text_format(&name, "%s%s.%d.%s", prefix, c->family == FAMILY_GPT2 ? "h" : "layers", layer, text);
    p.name = name.text;
    p.transposed = n->piece == PART_TURNED;
    if (n->tensor == TENSOR_wte || n->tensor == TENSOR_headw) {
        p.rows = (size_t)c->vocab;
        p.columns = t->columns;
        p.at = t->offset;
        return p;
    }
    huggingface_piece(c, n->piece, p.vector ? t->columns : t->rows, &first, p.vector ? &p.columns : &p.rows);
    if (p.vector) p.rows = 1;
    else p.columns = t->columns;
    p.at = t->offset + (size_t)(layer < 0 ? 0 : layer) * t->rows * t->columns + first * (p.vector ? 1 : t->columns);
    return p;
}

/* All tensors of a file with this model. */
static inline HuggingfaceParts huggingface_parts(const ModelConfig *c, const char *prefix) {
    TensorInfo info[TENSOR_COUNT];
    HuggingfaceParts p = {0};
    const int names = (int)(sizeof huggingface_names / sizeof *huggingface_names);
    model_tensors(c, info);
    p.part = (HuggingfacePart *)xcalloc((size_t)names * ((size_t)c->layers + 1), sizeof *p.part);
    for (int layer = -1; layer < c->layers; layer++)
        for (int i = 0; i < names; i++) {
            const HuggingfaceName *n = &huggingface_names[i];
            const TensorInfo *t = &info[n->tensor];
            if (!t->size || !n->name[huggingface_scheme(c->family)] || t->per_layer != (layer >= 0)) continue;
            p.part[p.count++] = huggingface_part(c, info, n, prefix, layer);
        }
    return p;
}

#endif
