/* gguf_model.h - models in GGUF files (gguf.h): their configuration, tensors and tokenizer, read and written.
 *
 *     architecture in the file    model                        rows of q, k   stored norms
 *     llama                       Llama, Mistral, SmolLM2      permuted
 *     smollm3                     SmolLM3                      permuted
 *     qwen2, qwen3, olmo2, phi3   Qwen 2, 2.5 and 3, OLMo 2,
 *                                 Phi 3 and 4
 *     gemma2, gemma3              Gemma 2, Gemma 3 (text)                     1 + weight
 *     gpt2                        GPT-2
 *
 * Tensors: token_embd, position_embd, output_norm, output (absent if it is that of the embeddings), and per layer N
 * blk.N.X with X = attn_norm, attn_q, attn_k, attn_v (or attn_qkv: q, k, v, one after another), attn_q_norm,
 * attn_k_norm, attn_output, post_attention_norm, ffn_norm, ffn_gate, ffn_up (Phi 3: gate and up), ffn_down and
 * post_ffw_norm, each with `.weight` and where the model has them `.bias`; matrices are (out, in) as in tensors.h.
 *
 * llama.cpp rotates channels 2j and 2j + 1 in llama and smollm3, this project channels j and j + D/2: row 2j + i of a
 * head in the file is row i D/2 + j of the model's (i = 0, 1; conversion/llama.py, permute). In these files llama3's
 * scaling of rotary positions is the tensor rope_freqs.weight, by which the frequencies are divided. It is recognised as
 * llama3's formula if there are an original context and a factor that give it, and else becomes the list of longrope
 * with a factor 1 of cosines. What is not in a file but in llama.cpp's code (src/models) is in the code below:
 * SmolLM3's layers without rotary positions (each fourth), Gemma's patterns of windows, its scale of scores, and
 * Gemma 3's base 10000 of the layers with a window.
 *
 * Refused with a line that names it: another architecture, an entry ARCHITECTURE.* that is not in gguf_known_key(), a
 * tensor that the model does not have, a missing one, another shape, files in several parts, adapters. Ignored: entries
 * outside general.*, tokenizer.* and ARCHITECTURE.*; of those, ARCHITECTURE.vocab_size (the embeddings' rows count),
 * rope.scaling.finetuned and all of general.* that describes the model. A Mistral's window is not in any file.
 *
 * Loading; `put` stores the values of the tensors of tensors.h, all of them but the value head's:
 *
 *     static bool put(void *m, int tensor, int layer, size_t first, const float *values, size_t n, Error *e) {
 *         const TensorInfo *t = &((Model *)m)->tensor[tensor];
 *         (void)e;
 *         model_upload((Model *)m, t->offset + (size_t)layer * t->rows * t->columns + first, values, n);
 *         return true;
 *     }
 *     ...
 *     bool ok = gguf_open(&g, path, e) && gguf_config(&g, &config, e) && model_new(&m, &config, b, d, false, e) &&
 *               gguf_load(&g, &config, put, &m, e) && gguf_tokenizer(&g, &tokenizer, e);
 *
 * Saving; gguf_model_values() reads from a Model:
 *
 *     const GgufOut out = {.type = QUANT_Q8_0, .name = "my model", .tokenizer = &tokenizer, .carry = &g};
 *     bool ok = gguf_save(&m.config, &out, "out.gguf", gguf_model_values, &m, e);
 */
#ifndef LLMC_MODEL_GGUF_MODEL_H
#define LLMC_MODEL_GGUF_MODEL_H

#include "../base/error.h" /* error_set, Error, xmalloc, xcalloc */
#include "../base/text.h"  /* TextBuffer, text_append, text_format, text_free */
#include "backend.h"       /* NORM_RMS, MLP_SWIGLU, MLP_GEGLU, MLP_GELU, ... */
#include "config.h"        /* ModelConfig, Rope, POSITION_ROTARY, FAMILY_PHI3, ... */
#include "gguf.h"          /* gguf_is, GgufWriter, GgufText, Gguf, ... */
#include "model.h"         /* MODEL_CHUNK, Model, model_download */
#include "quantized.h"     /* quant_info, QUANT_F32, QuantType, QUANT_F16, ... */
#include "tensors.h"       /* TENSOR_COUNT, TENSOR_qkvb, TENSOR_qkvw, TensorInfo, ... */
#include <math.h>

/* The architecture in the file, and the part of a configuration that it alone determines. */
typedef struct GgufArchitecture {
    const char *name;
    Family family;
    NormKind norm;
    NormPlace place;
    QkNorm qk_norm;
    PositionKind position;
    MlpKind mlp;
    bool permuted;  /* rows of queries and keys */
    bool gemma;     /* norms with 1 + weight, scaled embeddings */
    bool fused;     /* llama.cpp wants attn_qkv */
    bool fused_mlp; /* ffn_up is gate and up */
    bool biases;    /* llama.cpp knows biases of attention's output and of the MLP */
} GgufArchitecture;

// clang-format off
static const GgufArchitecture gguf_architectures[] = {
    /* name     family          norm        place      qk_norm       position          mlp         permuted, gemma, fused, fused_mlp, biases */
    {"llama",   FAMILY_LLAMA,   NORM_RMS,   NORM_PRE,  QK_NORM_NONE, POSITION_ROTARY,  MLP_SWIGLU, true,  false, false, false, true},
    {"smollm3", FAMILY_SMOLLM3, NORM_RMS,   NORM_PRE,  QK_NORM_NONE, POSITION_ROTARY,  MLP_SWIGLU, true,  false, false, false, false},
    {"qwen2",   FAMILY_QWEN2,   NORM_RMS,   NORM_PRE,  QK_NORM_NONE, POSITION_ROTARY,  MLP_SWIGLU, false, false, false, false, false},
    {"qwen3",   FAMILY_QWEN3,   NORM_RMS,   NORM_PRE,  QK_NORM_HEAD, POSITION_ROTARY,  MLP_SWIGLU, false, false, false, false, false},
    {"olmo2",   FAMILY_OLMO2,   NORM_RMS,   NORM_POST, QK_NORM_ROW,  POSITION_ROTARY,  MLP_SWIGLU, false, false, false, false, false},
    {"phi3",    FAMILY_PHI3,    NORM_RMS,   NORM_PRE,  QK_NORM_NONE, POSITION_ROTARY,  MLP_SWIGLU, false, false, true,  true,  false},
    {"gemma2",  FAMILY_GEMMA2,  NORM_RMS,   NORM_BOTH, QK_NORM_NONE, POSITION_ROTARY,  MLP_GEGLU,  false, true,  false, false, false},
    {"gemma3",  FAMILY_GEMMA3,  NORM_RMS,   NORM_BOTH, QK_NORM_HEAD, POSITION_ROTARY,  MLP_GEGLU,  false, true,  false, false, false},
    {"gpt2",    FAMILY_GPT2,    NORM_LAYER, NORM_PRE,  QK_NORM_NONE, POSITION_LEARNED, MLP_GELU,   false, false, true,  false, true}};
// clang-format on

enum { GGUF_ARCHITECTURES = sizeof gguf_architectures / sizeof *gguf_architectures };

/* Returns the architecture with this name, or NULL. */
static inline const GgufArchitecture *gguf_architecture_named(GgufText name) {
    for (int i = 0; i < GGUF_ARCHITECTURES; i++)
        if (gguf_is(name, gguf_architectures[i].name)) return &gguf_architectures[i];
    return NULL;
}

/* Returns the architecture in which models of a family are written. */
static inline const GgufArchitecture *gguf_architecture_of(Family family) {
    for (int i = 0; i < GGUF_ARCHITECTURES; i++)
        if (gguf_architectures[i].family == family) return &gguf_architectures[i];
    return &gguf_architectures[0]; /* Mistral is a llama */
}

/* ---- the configuration of a file -------------------------------------------------------------------------------- */

/* The entries under "ARCHITECTURE." of a file. Messages go to `error`; after the first one all calls fail. */
typedef struct GgufKeys {
    const Gguf *g;
    const GgufArchitecture *a;
    Error *error;
    bool ok;
} GgufKeys;

static inline const char *gguf_key(const GgufKeys *k, const char *suffix, char key[128]) {
    snprintf(key, 128, "%s.%s", k->a->name, suffix);
    return key;
}

/* Returns the integer under a key, or `missing`; if that is below `low`, the entry is required. */
static inline int32_t gguf_key_integer(GgufKeys *k, const char *suffix, int32_t low, int32_t high, int32_t missing) {
    char key[128];
    int64_t value = missing;
    k->ok = k->ok && gguf_get_integer(k->g, gguf_key(k, suffix, key), low, high, &value, k->error);
    if (k->ok && value < low) k->ok = error_set(k->error, "%s: the entry %s is missing", k->g->name, key);
    return k->ok ? (int32_t)value : missing;
}

static inline float gguf_key_number(GgufKeys *k, const char *suffix, double low, double high, double missing) {
    char key[128];
    double value = missing;
    k->ok = k->ok && gguf_get_number(k->g, gguf_key(k, suffix, key), low, high, &value, k->error);
    if (k->ok && value < low) k->ok = error_set(k->error, "%s: the entry %s is missing", k->g->name, key);
    return (float)value;
}

/* Whether the file has the entry. */
static inline bool gguf_key_exists(const GgufKeys *k, const char *suffix) {
    char key[128];
    return gguf_find(k->g, gguf_key(k, suffix, key)) != NULL;
}

/* Whether the entry ARCHITECTURE.`suffix` is one that gguf_config() reads or ignores on purpose. */
static inline bool gguf_known_key(GgufText suffix) {
    static const char *const known[] = {"context_length",
                                        "embedding_length",
                                        "block_count",
                                        "feed_forward_length",
                                        "vocab_size",
                                        "expert_count",
                                        "expert_used_count",
                                        "attention.head_count",
                                        "attention.head_count_kv",
                                        "attention.key_length",
                                        "attention.value_length",
                                        "attention.layer_norm_rms_epsilon",
                                        "attention.layer_norm_epsilon",
                                        "attention.causal",
                                        "attention.sliding_window",
                                        "attention.sliding_window_pattern",
                                        "attn_logit_softcapping",
                                        "final_logit_softcapping",
                                        "rope.dimension_count",
                                        "rope.freq_base",
                                        "rope.freq_base_swa",
                                        "rope.scale_linear",
                                        "rope.scaling.type",
                                        "rope.scaling.factor",
                                        "rope.scaling.original_context_length",
                                        "rope.scaling.attn_factor",
                                        "rope.scaling.finetuned",
                                        "rope.scaling.yarn_attn_factor",
                                        "rope.scaling.yarn_beta_fast",
                                        "rope.scaling.yarn_beta_slow",
                                        "rope.scaling.yarn_ext_factor"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (gguf_is(suffix, known[i])) return true;
    return false;
}

/* Checks the entries that say what the file is, and that all of the architecture are known. */
static inline bool gguf_check_entries(GgufKeys *k) {
    const Gguf *g = k->g;
    GgufText type = gguf_text("model");
    int64_t parts = 1, version = 2;
    bool causal = true;
    char key[128];
    if (!gguf_get_text(g, "general.type", &type, k->error) ||
        !gguf_get_integer(g, "split.count", 0, UINT16_MAX, &parts, k->error) ||
        !gguf_get_integer(g, "general.quantization_version", 2, 2, &version, k->error) ||
        !gguf_get_flag(g, gguf_key(k, "attention.causal", key), &causal, k->error))
        return false;
    if (!gguf_is(type, "model"))
        return error_set(k->error, "%s: general.type is \"%.*s\", expected \"model\"", g->name, GGUF_SHOWN(type));
    if (parts > 1)
        return error_set(k->error, "%s: is one of %lld parts; join them with llama-gguf-split --merge", g->name,
                         (long long)parts);
    if (!causal) return error_set(k->error, "%s: its attention is not causal, which is not supported", g->name);
    gguf_key_integer(k, "expert_count", 0, 0, 0);
    gguf_key_integer(k, "expert_used_count", 0, 0, 0);
    const size_t prefix = strlen(k->a->name);
    for (size_t i = 0; k->ok && i < g->entry_count; i++) {
        const GgufText full = g->entries[i].key;
        if (full.length <= prefix || !gguf_begins(full, k->a->name) || full.text[prefix] != '.') continue;
        const GgufText suffix = {full.text + prefix + 1, full.length - prefix - 1};
        if (!gguf_known_key(suffix))
            k->ok = error_set(k->error, "%s: the entry %.*s is not supported", g->name, GGUF_SHOWN(full));
    }
    return k->ok;
}

static inline bool gguf_has(const Gguf *g, const char *name) { return gguf_tensor(g, name) != NULL; }

/* Reads a vector of n float32 values, such as the factors of frequencies. */
static inline bool gguf_vector(const Gguf *g, const char *name, float *values, size_t n, Error *e) {
    const GgufTensor *t = gguf_tensor(g, name);
    if (!t) return error_set(e, "%s: there is no tensor %s", g->name, name);
    if (t->elements != n || t->ne[0] != n || t->type != QUANT_F32)
        return error_set(e, "%s: tensor %s has %zu elements of type %s, expected %zu of type F32", g->name, name,
                         t->elements, quant_info(t->type)->name, n);
    quant_decode(t->type, t->data, values, n);
    for (size_t i = 0; i < n; i++)
        if (!(values[i] > 0 && values[i] < INFINITY))
            return error_set(e, "%s: tensor %s has the value %g, expected a positive number", g->name, name,
                             (double)values[i]);
    return true;
}

/* The factor by which llama3's scaling divides the frequency of pair j of R rotated channels. */
static inline double gguf_llama3_factor(const Rope *r, int rotary, int j) {
    const double frequency = (double)(1.0f / powf(r->theta, (float)(2 * j) / (float)rotary));
    const double turns = r->original * frequency / 6.283185307179586, low = (double)r->low, high = (double)r->high;
    if (turns > high) return 1;
    if (turns < low) return (double)r->factor;
    const double t = (turns - low) / (high - low);
    return 1 / ((1 - t) / (double)r->factor + t);
}

/* Whether the factors are those of llama3's scaling; they are float32 results, hence the tolerance. */
static inline bool gguf_is_llama3(const Rope *r, int rotary, const float *factor) {
    for (int j = 0; j < rotary / 2; j++)
        if (!(fabs((double)factor[j] / gguf_llama3_factor(r, rotary, j) - 1) < 1e-5)) return false;
    return true;
}

/* Sets *r to the scaling that the tensor rope_freqs.weight describes: all published models have low 1 and high 4, and an
 * original context that is a power of two, 8192 in Llama 3. */
static inline void gguf_rope_of_factors(Rope *r, int rotary, const float *factor, int32_t context) {
    Rope llama3 = {.kind = ROPE_LLAMA3, .theta = r->theta, .factor = factor[rotary / 2 - 1], .low = 1, .high = 4};
    bool ones = true;
    for (int j = 0; j < rotary / 2; j++) ones = ones && factor[j] == 1;
    if (ones) return;
    for (int bit = -1; bit <= 20; bit++) {
        llama3.original = bit < 0 ? 8192 : 1 << bit;
        if (!gguf_is_llama3(&llama3, rotary, factor)) continue;
        *r = llama3;
        return;
    }
    r->kind = ROPE_LONGROPE;
    r->factor = r->attention = 1;
    r->original = context;
    r->list_count = rotary / 2;
    memcpy(r->short_list, factor, (size_t)r->list_count * sizeof *factor);
    memcpy(r->long_list, factor, (size_t)r->list_count * sizeof *factor);
}

/* longrope: two lists of factors. */
static inline void gguf_longrope(GgufKeys *k, ModelConfig *c) {
    Rope *r = &c->rope;
    r->kind = ROPE_LONGROPE;
    r->list_count = c->rotary / 2;
    r->original = gguf_key_integer(k, "rope.scaling.original_context_length", 1, INT32_MAX, 0);
    r->attention = gguf_key_number(k, "rope.scaling.attn_factor", 1e-6, 1e6, 1);
    r->factor = r->original ? (float)c->context / (float)r->original : 1;
    k->ok = k->ok && gguf_vector(k->g, "rope_factors_short.weight", r->short_list, (size_t)r->list_count, k->error) &&
            gguf_vector(k->g, "rope_factors_long.weight", r->long_list, (size_t)r->list_count, k->error);
}

static inline void gguf_yarn(GgufKeys *k, ModelConfig *c) {
    Rope *r = &c->rope;
    r->kind = ROPE_YARN;
    r->original = gguf_key_integer(k, "rope.scaling.original_context_length", 1, INT32_MAX, c->context);
    r->beta_fast = gguf_key_number(k, "rope.scaling.yarn_beta_fast", 1e-6, 1e6, 32);
    r->beta_slow = gguf_key_number(k, "rope.scaling.yarn_beta_slow", 1e-6, 1e6, 1);
    r->attention = gguf_key_number(k, "rope.scaling.yarn_attn_factor", 0, 1e6, 0);
    gguf_key_number(k, "rope.scaling.yarn_ext_factor", 1, 1, 1);
    /* attn_factor multiplies the factor that follows from yarn's formula (llama-context.cpp) */
    if (gguf_key_exists(k, "rope.scaling.attn_factor"))
        r->attention =
            gguf_key_number(k, "rope.scaling.attn_factor", 1e-6, 1e6, 1) * (float)(0.1 * log((double)r->factor) + 1);
}

/* Reads how frequencies are stretched, after rotary and context. */
static inline void gguf_read_rope(GgufKeys *k, ModelConfig *c) {
    GgufText type = gguf_text("linear"); /* as in llama.cpp, if there is a factor */
    float factors[ROPE_LIST_MAX];
    char key[128];
    Rope *r = &c->rope;
    r->theta = gguf_key_number(k, "rope.freq_base", 1e-3, 1e12, c->family == FAMILY_GEMMA3 ? 1e6 : 1e4);
    r->factor = gguf_key_number(k, "rope.scale_linear", 0, 1e6, 0);
    r->factor = gguf_key_number(k, "rope.scaling.factor", 0, 1e6, (double)r->factor);
    k->ok = k->ok && gguf_get_text(k->g, gguf_key(k, "rope.scaling.type", key), &type, k->error);
    const bool lists = gguf_has(k->g, "rope_factors_long.weight") || gguf_has(k->g, "rope_factors_short.weight");
    const bool tensor = gguf_has(k->g, "rope_freqs.weight"), stretched = r->factor != 0 && r->factor != 1;
    if (!k->ok) return;
    if (c->rotary / 2 > ROPE_LIST_MAX && (lists || tensor))
        k->ok = error_set(k->error, "%s: lists of %d factors of frequencies, expected at most %d", k->g->name,
                          c->rotary / 2, ROPE_LIST_MAX);
    else if ((lists && tensor) || ((lists || tensor) && stretched))
        k->ok = error_set(k->error, "%s: has two scalings of its rotary positions, expected one", k->g->name);
    else if (lists) gguf_longrope(k, c);
    else if (gguf_is(type, "longrope"))
        k->ok = error_set(k->error, "%s: rope.scaling.type is longrope, but there are no tensors rope_factors_*",
                          k->g->name);
    else if (gguf_is(type, "yarn") && r->factor > 0) gguf_yarn(k, c);
    else if (!gguf_is(type, "linear") && !gguf_is(type, "none"))
        k->ok = error_set(k->error, "%s: rope.scaling.type is \"%.*s\"%s", k->g->name, GGUF_SHOWN(type),
                          gguf_is(type, "yarn") ? ", but there is no factor" : ", which is not supported");
    else if (stretched && gguf_is(type, "linear")) r->kind = ROPE_LINEAR;
    if (!k->ok) return;
    if (r->kind == ROPE_DEFAULT) r->factor = 0;
    if (r->kind == ROPE_DEFAULT || r->kind == ROPE_LINEAR) gguf_key_number(k, "rope.scaling.attn_factor", 1, 1, 1);
    if (tensor && gguf_vector(k->g, "rope_freqs.weight", factors, (size_t)c->rotary / 2, k->error))
        gguf_rope_of_factors(r, c->rotary, factors, c->context);
    else if (tensor) k->ok = false;
}

/* Reads which layers have a window, a boolean per layer or a period; `period` is llama.cpp's own (0: all layers). */
static inline void gguf_read_windows(GgufKeys *k, ModelConfig *c, int32_t missing, int32_t period) {
    char key[128];
    c->window = gguf_key_integer(k, "attention.sliding_window", 0, INT32_MAX, missing);
    const GgufEntry *pattern = gguf_find(k->g, gguf_key(k, "attention.sliding_window_pattern", key));
    if (!k->ok || !c->window) return;
    if (pattern && pattern->array) {
        if (!gguf_kind_is_integer(pattern->kind) || pattern->count < (uint64_t)c->layers) {
            k->ok = error_set(k->error, "%s: entry %s has %llu elements of type %s, expected %d booleans", k->g->name,
                              key, (unsigned long long)pattern->count, gguf_kind_name(pattern->kind), c->layers);
            return;
        }
        for (int l = 0; l < c->layers; l++) c->layer[l] |= gguf_integer_at(pattern, (uint64_t)l) ? LAYER_WINDOW : 0;
        return;
    }
    period = gguf_key_integer(k, "attention.sliding_window_pattern", 0, MODEL_LAYERS_MAX, period);
    for (int l = 0; l < c->layers; l++) c->layer[l] |= !period || l % period < period - 1 ? LAYER_WINDOW : 0;
}

/* The scale of scores that llama.cpp uses for Gemma: the 27B models have 1/sqrt(C/H), the others 1/sqrt(D)
 * (src/models/gemma2.cpp, gemma3.cpp). */
static inline float gguf_gemma_scale(const ModelConfig *c) {
    const bool largest = c->layers == (c->family == FAMILY_GEMMA2 ? 46 : 62);
    return 1.0f / sqrtf((float)(largest ? c->width / c->heads : c->head_size));
}

static inline void gguf_read_gemma(GgufKeys *k, ModelConfig *c) {
    const bool second = c->family == FAMILY_GEMMA2;
    if (second) c->score_cap = gguf_key_number(k, "attn_logit_softcapping", 0, 1e6, 50);
    c->logit_cap = gguf_key_number(k, "final_logit_softcapping", 0, 1e6, second ? 30 : 0);
    gguf_read_windows(k, c, second ? 4096 : 0, second ? 2 : 6);
    c->score_scale = gguf_gemma_scale(c);
    const float local = gguf_key_number(k, "rope.freq_base_swa", 1e-3, 1e12, second ? (double)c->rope.theta : 1e4);
    if (second && local != c->rope.theta)
        k->ok = error_set(k->error, "%s: rope.freq_base_swa is %g, expected that of the other layers, %g", k->g->name,
                          (double)local, (double)c->rope.theta);
    if (!second && c->window) c->local_rope = (Rope){.theta = local};
}

/* What only some architectures have. */
static inline void gguf_read_layers(GgufKeys *k, ModelConfig *c) {
    const bool windows = c->family == FAMILY_PHI3 || k->a->gemma;
    if (k->a->gemma) gguf_read_gemma(k, c);
    else if (gguf_key_exists(k, "attn_logit_softcapping") || gguf_key_exists(k, "final_logit_softcapping"))
        k->ok = error_set(k->error, "%s: soft caps in the architecture %s are not supported", k->g->name, k->a->name);
    if (c->family == FAMILY_PHI3) gguf_read_windows(k, c, 0, 0);
    /* OLMo 3 is an olmo2 with a window */
    if (!windows) gguf_key_integer(k, "attention.sliding_window", 0, 0, 0);
    if (c->family != FAMILY_GEMMA3 && c->family != FAMILY_GEMMA2 && gguf_key_exists(k, "rope.freq_base_swa"))
        k->ok = error_set(k->error, "%s: rope.freq_base_swa in the architecture %s is not supported", k->g->name,
                          k->a->name);
    for (int l = 0; l < c->layers; l++)
        if (c->family == FAMILY_SMOLLM3 && l % 4 == 3) c->layer[l] |= LAYER_NO_ROPE;
}

static inline bool gguf_same_data(const GgufTensor *a, const GgufTensor *b) {
    return a->type == b->type && a->bytes == b->bytes && !memcmp(a->data, b->data, a->bytes);
}

/* Sets what the file's tensors say: the vocabulary, biases, and whether the output matrix is that of the embeddings. Old
 * files of GPT-2 hold it twice. */
static inline bool gguf_read_from_tensors(const Gguf *g, ModelConfig *c, Error *e) {
    const GgufTensor *embeddings = gguf_tensor(g, "token_embd.weight"), *output = gguf_tensor(g, "output.weight");
    if (!embeddings) return error_set(e, "%s: there is no tensor token_embd.weight", g->name);
    if (embeddings->dims != 2 || embeddings->ne[1] > (1 << 22) - 128)
        return error_set(e, "%s: tensor token_embd.weight has %d dimensions and %zu rows, expected 2 and at most %d",
                         g->name, embeddings->dims, embeddings->ne[1], (1 << 22) - 128);
    c->vocab = (int32_t)embeddings->ne[1];
    c->padded_vocab = gpt2_padded_vocab(c->vocab);
    c->tied = !output || (c->family == FAMILY_GPT2 && gguf_same_data(embeddings, output));
    c->qkv_bias = gguf_has(g, "blk.0.attn_q.bias") || gguf_has(g, "blk.0.attn_qkv.bias");
    c->attproj_bias = gguf_has(g, "blk.0.attn_output.bias");
    c->mlp_bias = gguf_has(g, "blk.0.ffn_up.bias");
    return true;
}

static inline void gguf_apply_architecture(const GgufArchitecture *a, ModelConfig *c) {
    c->family = a->family;
    c->norm = a->norm;
    c->norm_place = a->place;
    c->norm_plus_one = a->gemma;
    c->qk_norm = a->qk_norm;
    c->position = a->position;
    c->mlp = a->mlp;
    c->embed_scale = a->gemma ? sqrtf((float)c->width) : 0;
}

static inline void gguf_read_sizes(GgufKeys *k, ModelConfig *c) {
    const int32_t most = 1 << 20;
    c->context = gguf_key_integer(k, "context_length", 1, most, 0);
    c->width = gguf_key_integer(k, "embedding_length", 1, most, 0);
    c->layers = gguf_key_integer(k, "block_count", 1, MODEL_LAYERS_MAX, 0);
    c->hidden = gguf_key_integer(k, "feed_forward_length", 1, most, 0);
    c->heads = gguf_key_integer(k, "attention.head_count", 1, most, 0);
    c->kv_heads = gguf_key_integer(k, "attention.head_count_kv", 1, most, c->heads);
    if (!k->ok) return;
    c->head_size = gguf_key_integer(k, "attention.key_length", 1, most, c->width / c->heads);
    gguf_key_integer(k, "attention.value_length", c->head_size, c->head_size, c->head_size);
    if (k->a->norm == NORM_RMS) c->norm_eps = gguf_key_number(k, "attention.layer_norm_rms_epsilon", 1e-12, 1, 0);
    else c->norm_eps = gguf_key_number(k, "attention.layer_norm_epsilon", 1e-12, 1, 0);
    if (k->a->position == POSITION_LEARNED) return;
    c->rotary = gguf_key_integer(k, "rope.dimension_count", 1, c->head_size, c->head_size);
    if (k->ok && k->a->permuted && c->rotary != c->head_size)
        k->ok = error_set(k->error,
                          "%s: %d of a head's %d channels are rotated, which the architecture %s does not "
                          "support",
                          k->g->name, c->rotary, c->head_size, k->a->name);
}

/* Reads the architecture, which begins the file's keys. */
static inline const GgufArchitecture *gguf_read_architecture(const Gguf *g, Error *e) {
    GgufText name = {"", 0};
    TextBuffer known = {0};
    if (!gguf_get_text(g, "general.architecture", &name, e)) return NULL;
    const GgufArchitecture *a = gguf_architecture_named(name);
    if (a) return a;
    for (int i = 0; i < GGUF_ARCHITECTURES; i++) text_format(&known, "%s%s", i ? ", " : "", gguf_architectures[i].name);
    error_set(e, "%s: the architecture \"%.*s\" is not supported; known are %s", g->name, GGUF_SHOWN(name), known.text);
    text_free(&known);
    return NULL;
}

/* Reads the configuration of a file's model. */
static inline bool gguf_config(const Gguf *g, ModelConfig *c, Error *e) {
    GgufKeys k = {.g = g, .a = gguf_read_architecture(g, e), .error = e, .ok = true};
    *c = (ModelConfig){0};
    if (!k.a || !gguf_check_entries(&k)) return false;
    gguf_read_sizes(&k, c);
    gguf_apply_architecture(k.a, c);
    if (!k.ok || !gguf_read_from_tensors(g, c, e) || !model_config_check(c, g->name, e)) return false;
    if (c->position == POSITION_ROTARY) gguf_read_rope(&k, c);
    if (k.ok) gguf_read_layers(&k, c);
    return k.ok;
}

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

/* Copies whole heads of `head` rows from the order of the file, in which a pair's two rows follow one another, to that of
 * the model, or back. */
static inline void gguf_permute(const GgufPart *p, const float *from, float *to, size_t rows, bool to_model) {
    for (size_t r = 0; r < rows; r++) {
        const size_t within = r % p->head, half = p->head / 2, i = within / half, j = within % half;
        const size_t file = r - within + 2 * j + i;
        memcpy(to + (to_model ? r : file) * p->columns, from + (to_model ? file : r) * p->columns,
               p->columns * sizeof *to);
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

/* ---- loading ---------------------------------------------------------------------------------------------------- */

/* Stores elements first ... first + n - 1 of a layer of a tensor of the model (TENSOR_...; layer 0 if it has no layers). */
typedef bool (*GgufPut)(void *context, int tensor, int layer, size_t first, const float *values, size_t n, Error *e);

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

/* Decodes n elements from element `first` of a tensor, whole blocks. */
static inline void gguf_decode(const GgufTensor *t, size_t first, float *out, size_t n) {
    const uint8_t *from = t->data + quant_bytes(t->type, first);
#pragma omp parallel for schedule(static) if (n > 4 * GGUF_PIECE)
    for (size_t at = 0; at < n; at += GGUF_PIECE)
        quant_decode(t->type, from + quant_bytes(t->type, at), out + at, n - at < GGUF_PIECE ? n - at : GGUF_PIECE);
}

/* Hands all rows of a part to `put`. buffer: two chunks. */
static inline bool gguf_load_part(const Gguf *g, const GgufPart *p, float *buffer, size_t chunk, GgufPut put,
                                  void *context, Error *e) {
    const GgufTensor *t = gguf_part_tensor(g, p, e);
    if (!t) return false;
    for (size_t done = 0; done < p->rows;) {
        const size_t rows = gguf_chunk_rows(p, done), n = rows * p->columns;
        float *values = buffer;
        gguf_decode(t, (p->file_first + done) * p->columns, values, n);
        if (p->head) {
            values = buffer + chunk;
            gguf_permute(p, buffer, values, rows, true);
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

/* Checks that the model has all tensors of the file. */
static inline bool gguf_check_tensors(const Gguf *g, const GgufParts *p, const ModelConfig *c, Error *e) {
    bool *used = (bool *)xcalloc(g->tensor_count, sizeof *used), ok = true;
    for (size_t i = 0; i < p->count; i++) {
        const GgufTensor *t = gguf_tensor(g, p->part[i].name);
        if (t) used[t - g->tensors] = true;
    }
    for (size_t i = 0; ok && i < g->tensor_count; i++) {
        const GgufText name = g->tensors[i].name;
        const bool rope = c->position == POSITION_ROTARY &&
                          (gguf_is(name, "rope_freqs.weight") || gguf_is(name, "rope_factors_long.weight") ||
                           gguf_is(name, "rope_factors_short.weight"));
        if (used[i] || rope || (c->tied && gguf_is(name, "output.weight"))) continue;
        ok = error_set(e, "%s: tensor %.*s is not one of a model of this architecture", g->name, GGUF_SHOWN(name));
    }
    free(used);
    return ok;
}

/* Reads all tensors of a file with the configuration c of gguf_config(): each element of the model's tensors but those of
 * the value head is handed to `put` once. Fails if the file lacks a tensor or has one that the model does not have. */
static inline bool gguf_load(const Gguf *g, const ModelConfig *c, GgufPut put, void *context, Error *e) {
    const GgufParts p = gguf_parts(c, gguf_has(g, "blk.0.attn_qkv.weight"));
    bool ok = gguf_check_tensors(g, &p, c, e);
    for (size_t i = 0; ok && i < p.count; i++) ok = gguf_part_tensor(g, &p.part[i], e) != NULL;
    if (ok) { /* the shapes fit the file, so this memory is bounded by its size */
        const size_t chunk = gguf_largest_chunk(&p);
        float *buffer = (float *)xmalloc(2 * chunk * sizeof *buffer);
        for (size_t i = 0; ok && i < p.count; i++) ok = gguf_load_part(g, &p.part[i], buffer, chunk, put, context, e);
        free(buffer);
    }
    ok = ok && gguf_load_padding(c, put, context, e);
    free(p.part);
    return ok;
}

/* ---- the tokenizer ---------------------------------------------------------------------------------------------- */

typedef enum {
    GGUF_TOKEN_NORMAL = 1,
    GGUF_TOKEN_UNKNOWN,
    GGUF_TOKEN_CONTROL, /* a special token */
    GGUF_TOKEN_USER,    /* an added token that is not special */
    GGUF_TOKEN_UNUSED,
    GGUF_TOKEN_BYTE
} GgufTokenType;

/* A tokenizer as the file describes it. Texts point into the file and are valid until it is closed. */
typedef struct GgufTokenizer {
    GgufText model; /* "gpt2": byte-level BPE with merges; "llama": SentencePiece with scores; "" if there is none */
    GgufText pre;   /* name of the pattern that splits texts, or "" */
    GgufText *tokens;
    int32_t *types; /* GGUF_TOKEN_..., or NULL */
    float *scores;  /* or NULL */
    size_t count;
    GgufText *merges; /* "a b" */
    size_t merge_count;
    int32_t bos, eos, eot, eom, unknown, padding; /* ids; -1: not given */
    int add_bos, add_eos, add_space_prefix;       /* 0, 1; -1: not given */
    GgufText chat_template;                       /* text is NULL if there is none */
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

/* ---- saving ----------------------------------------------------------------------------------------------------- */

/* Reads elements first ... first + n - 1 of a layer of a tensor of the model. */
typedef bool (*GgufGet)(void *context, int tensor, int layer, size_t first, float *values, size_t n, Error *e);

typedef struct GgufOut {
    QuantType type;                 /* of matrices: F32, F16, BF16, Q8_0 or Q4_0 */
    const char *name;               /* general.name; NULL: that of `carry` */
    const GgufTokenizer *tokenizer; /* NULL: the file gets that of `carry`, if any */
    const Gguf *carry;              /* a file whose entries general.* and tokenizer.* are kept; or NULL */
} GgufOut;

/* The GgufGet of a Model, the context. */
static inline bool gguf_model_values(void *context, int tensor, int layer, size_t first, float *values, size_t n,
                                     Error *e) {
    const Model *m = (const Model *)context;
    const TensorInfo *t = &m->tensor[tensor];
    (void)e;
    model_download(m, t->offset + (size_t)layer * t->rows * t->columns + first, values, n);
    return true;
}

/* Whether the layers with a window are those of llama.cpp's period (0: all). */
static inline bool gguf_usual_windows(const ModelConfig *c, int period) {
    for (int l = 0; l < c->layers; l++)
        if (!(c->layer[l] & LAYER_WINDOW) != (period && l % period == period - 1)) return false;
    return true;
}

static inline bool gguf_any_window(const ModelConfig *c) {
    bool any = false;
    for (int l = 0; l < c->layers; l++) any = any || c->layer[l] & LAYER_WINDOW;
    return any && c->window;
}

/* The context that is written. An architecture without windows in the file gets the part of the context in which they
 * have no effect. */
static inline int32_t gguf_context(const ModelConfig *c) {
    const bool in_file = c->family == FAMILY_PHI3 || gguf_architecture_of(c->family)->gemma;
    return !in_file && gguf_any_window(c) && c->window < c->context ? c->window : c->context;
}

static inline bool gguf_near(float a, float b) { return fabsf(a - b) <= 1e-6f * fabsf(b); }

static inline bool gguf_usual_no_rope(const ModelConfig *c) {
    for (int l = 0; l < c->layers; l++)
        if (!(c->layer[l] & LAYER_NO_ROPE) != !(c->family == FAMILY_SMOLLM3 && l % 4 == 3)) return false;
    return true;
}

/* Checks that the file can say all of the configuration, so that llama.cpp computes what this project does. */
static inline bool gguf_check_config(const ModelConfig *c, const char *path, Error *e) {
    const GgufArchitecture *a = gguf_architecture_of(c->family);
    const bool gemma2 = c->family == FAMILY_GEMMA2, gemma3 = c->family == FAMILY_GEMMA3;
    ModelConfig usual = *c;
    gguf_apply_architecture(a, &usual);
    const float scale = a->gemma ? gguf_gemma_scale(c) : 1.0f / sqrtf((float)c->head_size);
    const float local = gemma3 && gguf_any_window(c) ? c->local_rope.theta : 1;
    const struct {
        bool fits;
        const char *what;
    } checks[] = {
        {!c->value_head, "a value head"},
        {usual.norm == c->norm && usual.norm_place == c->norm_place && usual.norm_plus_one == c->norm_plus_one,
         "these norms"},
        {usual.qk_norm == c->qk_norm, "this norm of queries and keys"},
        {usual.position == c->position && usual.mlp == c->mlp, "these positions or this MLP"},
        {usual.embed_scale == c->embed_scale || gguf_near(usual.embed_scale, c->embed_scale), "this embedding scale"},
        {!c->score_scale || gguf_near(c->score_scale, scale), "this scale of scores"},
        {c->score_scale || !a->gemma || gguf_near(scale, 1.0f / sqrtf((float)c->head_size)), "this scale of scores"},
        {gemma2 ? c->score_cap > 0 : !c->score_cap, "this cap of scores"},
        {gemma2 ? c->logit_cap > 0 : gemma3 || !c->logit_cap, "this cap of logits"},
        {a->biases || (!c->attproj_bias && !c->mlp_bias), "biases of attention's output or of the MLP"},
        {!gemma2 || c->tied, "an output matrix of its own"},
        {!a->permuted || c->rotary == c->head_size, "heads that are rotated in part"},
        {gguf_usual_no_rope(c), "these layers without rotary positions"},
        {c->family != FAMILY_PHI3 || !c->window || gguf_usual_windows(c, 0), "windows in some layers"},
        {!gemma2 || c->window, "no window"},
        {c->rope.kind != ROPE_YARN || !c->rope.exact, "yarn without rounding"},
        {c->rope.kind != ROPE_LONGROPE || c->rope.list_count == c->rotary / 2, "lists of another length"},
        {gemma3 || !c->local_rope.theta, "a second base of rotary positions"},
        {local > 0 && c->local_rope.kind == ROPE_DEFAULT, "these rotary positions of the layers with a window"}};
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
        if (!checks[i].fits)
            return error_set(e, "%s: a GGUF file of architecture %s cannot have %s", path, a->name, checks[i].what);
    return true;
}

static inline bool gguf_factors_in_one(const Rope *r) {
    return r->kind == ROPE_LLAMA3 ||
           (r->kind == ROPE_LONGROPE && r->attention == 1 &&
            !memcmp(r->short_list, r->long_list, (size_t)r->list_count * sizeof *r->short_list));
}

/* The factors of frequencies that are tensors of the file. */
static inline void gguf_plan_rope(GgufWriter *w, const ModelConfig *c) {
    const size_t n = (size_t)c->rotary / 2;
    if (gguf_factors_in_one(&c->rope)) gguf_plan(w, "rope_freqs.weight", QUANT_F32, 1, &n);
    else if (c->rope.kind == ROPE_LONGROPE) {
        gguf_plan(w, "rope_factors_long.weight", QUANT_F32, 1, &n);
        gguf_plan(w, "rope_factors_short.weight", QUANT_F32, 1, &n);
    }
}

static inline bool gguf_put_rope(GgufWriter *w, const ModelConfig *c, Error *e) {
    const size_t n = (size_t)c->rotary / 2;
    const Rope *r = &c->rope;
    float factors[MODEL_CHUNK / 1024];
    if (r->kind == ROPE_LLAMA3) {
        for (size_t j = 0; j < n; j++) factors[j] = (float)gguf_llama3_factor(r, c->rotary, (int)j);
        return gguf_put_values(w, factors, n, e);
    }
    if (r->kind != ROPE_LONGROPE) return true;
    return gguf_put_values(w, r->long_list, n, e) &&
           (gguf_factors_in_one(r) || gguf_put_values(w, r->short_list, n, e));
}

/* The type in which a part is stored: norms, biases and positions as F32, and rows that are not whole blocks as F16, as
 * in llama.cpp. */
static inline QuantType gguf_part_type(const GgufPart *p, QuantType type) {
    if (p->vector || p->tensor == TENSOR_wpe) return QUANT_F32;
    return p->columns % quant_info(type)->values ? QUANT_F16 : type;
}

static inline void gguf_plan_parts(GgufWriter *w, const GgufParts *p, QuantType type) {
    for (size_t i = 0; i < p->count; i++) {
        const GgufPart *part = &p->part[i];
        if (part->file_first) continue; /* rows of the tensor before */
        const size_t ne[2] = {part->vector ? part->file_rows : part->columns, part->file_rows};
        gguf_plan(w, part->name, gguf_part_type(part, type), part->vector ? 1 : 2, ne);
    }
}

/* Writes all rows of a part. buffer: two chunks. */
static inline bool gguf_save_part(GgufWriter *w, const GgufPart *p, float *buffer, size_t chunk, GgufGet get,
                                  void *context, Error *e) {
    for (size_t done = 0; done < p->rows;) {
        const size_t rows = gguf_chunk_rows(p, done), n = rows * p->columns;
        float *values = buffer;
        if (!get(context, p->tensor, p->layer, (p->first + done) * p->columns, values, n, e)) return false;
        if (p->head) {
            values = buffer + chunk;
            gguf_permute(p, buffer, values, rows, false);
        }
        for (size_t i = 0; p->plus_one && i < n; i++) values[i] += 1;
        if (!gguf_put_values(w, values, n, e)) return false;
        done += rows;
    }
    return true;
}

/* Entries of another file that this one sets itself. */
static inline bool gguf_replaced(GgufText key, const GgufOut *o) {
    static const char *const always[] = {"general.architecture", "general.type", "general.file_type",
                                         "general.alignment", "general.quantization_version"};
    static const char *const tokenizer[] = {
        "tokenizer.ggml.model",  "tokenizer.ggml.pre",    "tokenizer.ggml.tokens",  "tokenizer.ggml.token_type",
        "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.chat_template"};
    for (size_t i = 0; i < sizeof always / sizeof *always; i++)
        if (gguf_is(key, always[i])) return true;
    if (o->name && gguf_is(key, "general.name")) return true;
    for (size_t i = 0; o->tokenizer && i < sizeof tokenizer / sizeof *tokenizer; i++)
        if (gguf_is(key, tokenizer[i])) return true;
    for (int i = 0; o->tokenizer && i < GGUF_IDS; i++)
        if (gguf_is(key, gguf_id_key[i])) return true;
    for (int i = 0; o->tokenizer && i < GGUF_ADDS; i++)
        if (gguf_is(key, gguf_add_key[i])) return true;
    return false;
}

static inline void gguf_put_carried(GgufWriter *w, const GgufOut *o) {
    for (size_t i = 0; o->carry && i < o->carry->entry_count; i++) {
        const GgufEntry *entry = &o->carry->entries[i];
        if ((gguf_begins(entry->key, "general.") || gguf_begins(entry->key, "tokenizer.")) &&
            !gguf_replaced(entry->key, o))
            gguf_put_entry(w, entry);
    }
}

/* Writes one text, number and type per row of the embeddings. Rows without a token get [PAD<id>] of type unused, as by
 * llama.cpp's converter. */
static inline void gguf_put_tokens(GgufWriter *w, const GgufTokenizer *t, size_t rows) {
    char(*pad)[24] = xmalloc((rows - t->count + 1) * sizeof *pad);
    GgufText *tokens = (GgufText *)xmalloc(rows * sizeof *tokens);
    int32_t *types = (int32_t *)xmalloc(rows * sizeof *types);
    float *scores = (float *)xmalloc(rows * sizeof *scores);
    for (size_t i = 0; i < rows; i++) {
        const bool given = i < t->count;
        if (!given) snprintf(pad[i - t->count], sizeof *pad, "[PAD%zu]", i);
        tokens[i] = given ? t->tokens[i] : gguf_text(pad[i - t->count]);
        types[i] = !given ? GGUF_TOKEN_UNUSED : t->types ? t->types[i] : GGUF_TOKEN_NORMAL;
        scores[i] = given && t->scores ? t->scores[i] : -10000;
    }
    gguf_put_texts(w, "tokenizer.ggml.tokens", tokens, rows);
    gguf_put_integers(w, "tokenizer.ggml.token_type", types, rows);
    if (t->scores) gguf_put_numbers(w, "tokenizer.ggml.scores", scores, rows);
    free(pad), free(tokens), free(types), free(scores);
}

static inline void gguf_put_tokenizer(GgufWriter *w, const GgufTokenizer *t, size_t rows) {
    const int32_t id[GGUF_IDS] = {t->bos, t->eos, t->eot, t->eom, t->unknown, t->padding};
    const int add[GGUF_ADDS] = {t->add_bos, t->add_eos, t->add_space_prefix};
    gguf_put_text(w, "tokenizer.ggml.model", t->model);
    if (t->pre.length) gguf_put_text(w, "tokenizer.ggml.pre", t->pre);
    gguf_put_tokens(w, t, rows);
    if (t->merges) gguf_put_texts(w, "tokenizer.ggml.merges", t->merges, t->merge_count);
    for (int i = 0; i < GGUF_IDS; i++)
        if (id[i] >= 0) gguf_put_u32(w, gguf_id_key[i], (uint32_t)id[i]);
    for (int i = 0; i < GGUF_ADDS; i++)
        if (add[i] >= 0) gguf_put_flag(w, gguf_add_key[i], add[i]);
    if (t->chat_template.text) gguf_put_text(w, "tokenizer.chat_template", t->chat_template);
}

/* Writes the entry ARCHITECTURE.`suffix`. */
static inline void gguf_put_key_u32(GgufWriter *w, const GgufKeys *k, const char *suffix, int32_t value) {
    char key[128];
    gguf_put_u32(w, gguf_key(k, suffix, key), (uint32_t)value);
}
static inline void gguf_put_key_f32(GgufWriter *w, const GgufKeys *k, const char *suffix, float value) {
    char key[128];
    gguf_put_f32(w, gguf_key(k, suffix, key), value);
}
static inline void gguf_put_key_text(GgufWriter *w, const GgufKeys *k, const char *suffix, const char *value) {
    char key[128];
    gguf_put_text(w, gguf_key(k, suffix, key), gguf_text(value));
}

static inline void gguf_put_yarn(GgufWriter *w, const GgufKeys *k, const Rope *r) {
    const float usual = (float)(0.1 * log((double)r->factor) + 1);
    gguf_put_key_text(w, k, "rope.scaling.type", "yarn");
    gguf_put_key_f32(w, k, "rope.scaling.factor", r->factor);
    gguf_put_key_u32(w, k, "rope.scaling.original_context_length", r->original);
    if (r->attention > 0) gguf_put_key_f32(w, k, "rope.scaling.attn_factor", r->attention / usual);
    if (r->beta_fast > 0) gguf_put_key_f32(w, k, "rope.scaling.yarn_beta_fast", r->beta_fast);
    if (r->beta_slow > 0) gguf_put_key_f32(w, k, "rope.scaling.yarn_beta_slow", r->beta_slow);
}

static inline void gguf_put_positions(GgufWriter *w, const GgufKeys *k, const ModelConfig *c) {
    const Rope *r = &c->rope;
    gguf_put_key_u32(w, k, "rope.dimension_count", c->rotary);
    gguf_put_key_f32(w, k, "rope.freq_base", r->theta);
    if (r->kind == ROPE_YARN) gguf_put_yarn(w, k, r);
    else if (r->kind == ROPE_LINEAR) {
        gguf_put_key_text(w, k, "rope.scaling.type", "linear");
        gguf_put_key_f32(w, k, "rope.scaling.factor", r->factor);
    } else if (r->kind == ROPE_LONGROPE && !gguf_factors_in_one(r)) {
        const double derived = r->factor > 1 ? sqrt(1 + log((double)r->factor) / log((double)r->original)) : 1;
        gguf_put_key_u32(w, k, "rope.scaling.original_context_length", r->original);
        gguf_put_key_f32(w, k, "rope.scaling.attn_factor", r->attention > 0 ? r->attention : (float)derived);
    } else if (c->family == FAMILY_PHI3) gguf_put_key_u32(w, k, "rope.scaling.original_context_length", c->context);
    if (c->local_rope.theta > 0) gguf_put_key_f32(w, k, "rope.freq_base_swa", c->local_rope.theta);
}

static inline void gguf_put_windows(GgufWriter *w, const GgufKeys *k, const ModelConfig *c) {
    const int period = c->family == FAMILY_GEMMA2 ? 2 : c->family == FAMILY_GEMMA3 ? 6 : 0;
    char key[128];
    if (!k->a->gemma && c->family != FAMILY_PHI3) return;
    gguf_put_key_u32(w, k, "attention.sliding_window", c->window);
    if (!c->window || gguf_usual_windows(c, period)) return;
    gguf_put_array(w, gguf_key(k, "attention.sliding_window_pattern", key), GGUF_BOOL, (size_t)c->layers);
    for (int l = 0; l < c->layers; l++) text_append(&w->entries, c->layer[l] & LAYER_WINDOW ? "\1" : "\0", 1);
}

/* The entries of the configuration, in the order of llama.cpp's converter. */
static inline void gguf_put_config(GgufWriter *w, const ModelConfig *c) {
    const GgufKeys k = {.a = gguf_architecture_of(c->family)};
    gguf_put_key_u32(w, &k, "block_count", c->layers);
    gguf_put_key_u32(w, &k, "context_length", gguf_context(c));
    gguf_put_key_u32(w, &k, "embedding_length", c->width);
    gguf_put_key_u32(w, &k, "feed_forward_length", c->hidden);
    gguf_put_key_u32(w, &k, "attention.head_count", c->heads);
    gguf_put_key_u32(w, &k, "attention.head_count_kv", c->kv_heads);
    gguf_put_key_u32(w, &k, "attention.key_length", c->head_size);
    gguf_put_key_u32(w, &k, "attention.value_length", c->head_size);
    gguf_put_key_f32(w, &k, c->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
                     c->norm_eps);
    gguf_put_key_u32(w, &k, "vocab_size", c->vocab);
    if (c->position == POSITION_ROTARY) gguf_put_positions(w, &k, c);
    gguf_put_windows(w, &k, c);
    if (c->score_cap > 0) gguf_put_key_f32(w, &k, "attn_logit_softcapping", c->score_cap);
    if (c->logit_cap > 0) gguf_put_key_f32(w, &k, "final_logit_softcapping", c->logit_cap);
}

/* general.file_type (llama.h, llama_ftype). */
static inline uint32_t gguf_file_type(QuantType type) {
    switch (type) {
    case QUANT_F16: return 1;
    case QUANT_Q4_0: return 2;
    case QUANT_Q8_0: return 7;
    case QUANT_BF16: return 32;
    default: return 0;
    }
}

static inline void gguf_put_head(GgufWriter *w, const ModelConfig *c, const GgufOut *o) {
    gguf_put_text(w, "general.architecture", gguf_text(gguf_architecture_of(c->family)->name));
    gguf_put_text(w, "general.type", gguf_text("model"));
    if (o->name) gguf_put_text(w, "general.name", gguf_text(o->name));
    gguf_put_u32(w, "general.file_type", gguf_file_type(o->type));
    gguf_put_u32(w, "general.quantization_version", 2);
    gguf_put_config(w, c);
    if (o->tokenizer && o->tokenizer->count) gguf_put_tokenizer(w, o->tokenizer, (size_t)c->vocab);
    gguf_put_carried(w, o);
}

static inline bool gguf_write(GgufWriter *w, const ModelConfig *c, const GgufParts *p, const char *path, GgufGet get,
                              void *context, Error *e) {
    const size_t chunk = gguf_largest_chunk(p);
    float *buffer = (float *)xmalloc(2 * chunk * sizeof *buffer);
    bool ok = gguf_begin(w, path, e) && gguf_put_rope(w, c, e);
    for (size_t i = 0; ok && i < p->count; i++) ok = gguf_save_part(w, &p->part[i], buffer, chunk, get, context, e);
    free(buffer);
    return ok && gguf_commit(w, e);
}

/* Writes a model. `get` gives the values of its tensors, each once. Refused: configurations that GGUF cannot describe
 * (gguf_check_config()), tokenizers with more tokens than the model, and values that the type cannot store. */
static inline bool gguf_save(const ModelConfig *c, const GgufOut *o, const char *path, GgufGet get, void *context,
                             Error *e) {
    GgufWriter w;
    if (!quant_info(o->type)->encodes)
        return error_set(e, "%s: writing the type %s is not supported", path, quant_info(o->type)->name);
    if (o->tokenizer && o->tokenizer->count > (size_t)c->vocab)
        return error_set(e, "%s: the tokenizer has %zu tokens, the model %d", path, o->tokenizer->count, c->vocab);
    if (!gguf_check_config(c, path, e)) return false;
    const GgufParts p = gguf_parts(c, gguf_architecture_of(c->family)->fused);
    gguf_create(&w);
    gguf_put_head(&w, c, o);
    gguf_plan_rope(&w, c);
    gguf_plan_parts(&w, &p, o->type);
    const bool ok = gguf_write(&w, c, &p, path, get, context, e);
    gguf_abort(&w);
    free(p.part);
    return ok;
}

#endif
