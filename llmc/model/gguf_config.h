/* gguf_config.h - the configuration of the model in a GGUF file (gguf.h).
 *
 *     architecture in the file    model                        rows of q, k   stored norms
 *     llama                       Llama, Mistral, SmolLM2      permuted
 *     smollm3                     SmolLM3                      permuted
 *     qwen2, qwen3, olmo2, phi3   Qwen 2, 2.5 and 3, OLMo 2,
 *                                 Phi 3 and 4
 *     gemma2, gemma3              Gemma 2, Gemma 3 (text)                     1 + weight
 *     gpt2                        GPT-2
 *
 * Sizes are entries ARCHITECTURE.embedding_length, .block_count and so on; biases and an output matrix of its own follow
 * from the tensors that are in the file. llama3's scaling of rotary positions is the tensor rope_freqs.weight, by which
 * the frequencies are divided. It is recognised as llama3's formula if there are an original context and a factor that
 * give it, and else becomes the list of longrope with a factor 1 of cosines. What is not in a file but in llama.cpp's
 * code (src/models) is in the code below: SmolLM3's layers without rotary positions (each fourth), Gemma's patterns of
 * windows, its scale of scores, and Gemma 3's base 10000 of the layers with a window.
 *
 * Refused with a line that names it: another architecture, an entry ARCHITECTURE.* that is not in gguf_known_key(), files
 * in several parts, adapters. Ignored: entries outside general.*, split.* and ARCHITECTURE.*; of those,
 * ARCHITECTURE.vocab_size (the embeddings' rows count), rope.scaling.finetuned, entries rope.scaling.* of another kind of
 * scaling than the file's, and all of general.* that describes the model. A Mistral's window is not in any file.
 *
 *     Gguf g;
 *     ModelConfig c;
 *     if (!gguf_open(&g, path, e)) return false;
 *     bool ok = gguf_read_config(&g, &c, e);        // gguf_config() of gguf_model.h also checks the tensors
 *     gguf_close(&g);
 */
#ifndef LLMC_MODEL_GGUF_CONFIG_H
#define LLMC_MODEL_GGUF_CONFIG_H

#include "../base/error.h" /* error_set, Error */
#include "../base/text.h"  /* TextSlice, TextBuffer, text_format, text_free */
#include "backend.h"       /* NORM_RMS, MLP_SWIGLU, MLP_GEGLU, MLP_GELU, ... */
#include "config.h"        /* ModelConfig, POSITION_ROTARY, Rope, NORM_PRE, ... */
#include "gguf.h"          /* gguf_is, Gguf, GGUF_SHOWN, GgufTensor, ... */
#include "quantized.h"     /* quant_decode, quant_info */
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
    bool fused;     /* llama.cpp reads attn_qkv */
    bool fused_mlp; /* ffn_up is gate and up */
    bool biases;    /* llama.cpp reads biases of attention's output and of the MLP */
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

enum { GGUF_FACTORS = 512 }; /* frequencies of a head: half of 1024, the most channels of one */
enum { GGUF_ARCHITECTURES = sizeof gguf_architectures / sizeof *gguf_architectures };

/* Returns the architecture with this name, or NULL. */
static inline const GgufArchitecture *gguf_architecture_named(TextSlice name) {
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
static inline bool gguf_known_key(TextSlice suffix) {
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
    TextSlice type = gguf_text("model");
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
        const TextSlice full = g->entries[i].key;
        if (full.length <= prefix || !gguf_begins(full, k->a->name) || full.text[prefix] != '.') continue;
        const TextSlice suffix = {full.text + prefix + 1, full.length - prefix - 1};
        const bool rope = gguf_begins(suffix, "rope.") && k->a->position == POSITION_LEARNED;
        if (rope || !gguf_known_key(suffix))
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
    TextSlice type = gguf_text("linear"); /* as in llama.cpp, if there is a factor */
    float factors[GGUF_FACTORS];
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
    TextSlice name = {"", 0};
    TextBuffer known = {0};
    if (!gguf_get_text(g, "general.architecture", &name, e)) return NULL;
    const GgufArchitecture *a = gguf_architecture_named(name);
    if (a) return a;
    for (int i = 0; i < GGUF_ARCHITECTURES; i++) text_format(&known, "%s%s", i ? ", " : "", gguf_architectures[i].name);
    error_set(e, "%s: the architecture \"%.*s\" is not supported; known are %s", g->name, GGUF_SHOWN(name), known.text);
    text_free(&known);
    return NULL;
}

/* Reads the configuration but does not check the tensors. */
static inline bool gguf_read_config(const Gguf *g, ModelConfig *c, Error *e) {
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

#endif
