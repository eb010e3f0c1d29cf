/* config.h - a model's configuration: its sizes, the sizes derived from them, and validation.
 *
 *     ModelConfig c = gpt2_config(12, 12, 768, 50257, 1024);
 *     if (!model_config_check(&c, "model", &e)) return false;
 */
#ifndef LLMC_MODEL_CONFIG_H
#define LLMC_MODEL_CONFIG_H

#include "../base/error.h" /* error_set, Error */
#include "backend.h"       /* MLP_GELU, NORM_LAYER, LORA_PARTS, MLP_GEGLU, ... */
#include <math.h>

/* The published architectures that a configuration can describe; a file's `model_type` selects one. GPT-2 is that of
 * new models. SmolLM2 is a Llama. */
typedef enum {
    FAMILY_GPT2,
    FAMILY_LLAMA,
    FAMILY_MISTRAL,
    FAMILY_QWEN2,
    FAMILY_QWEN3,
    FAMILY_SMOLLM3,
    FAMILY_OLMO2,
    FAMILY_PHI3,
    FAMILY_GEMMA2,
    FAMILY_GEMMA3,
    FAMILY_COUNT
} Family;

/* How a model encodes positions: learned embeddings, or rotation of queries and keys (Su et al. 2021). */
typedef enum { POSITION_LEARNED, POSITION_ROTARY } PositionKind;

/* Which vectors the norm of queries and keys normalises: each head (Qwen3, Gemma 3), or the whole row of all heads
 * (OLMo 2). */
typedef enum { QK_NORM_NONE, QK_NORM_HEAD, QK_NORM_ROW } QkNorm;

/* Where a layer has norms: before attention and the MLP; on their outputs (OLMo 2); both (Gemma 2 and 3). */
typedef enum { NORM_PRE, NORM_POST, NORM_BOTH } NormPlace;

/* How the frequencies of rotary positions are stretched to longer contexts (rotary.h has the formulas). */
typedef enum { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_LONGROPE } RopeKind;

enum { ROPE_LIST_MAX = 256 };

/* Rotary positions with base theta. Fields that a kind does not use are 0. */
typedef struct Rope {
    RopeKind kind;
    float theta;
    float factor;               /* how many times longer the context became */
    float low, high;            /* llama3: low_freq_factor, high_freq_factor */
    float beta_fast, beta_slow; /* yarn */
    float attention;            /* yarn, longrope: factor of cosines and sines; 0: derived from the other fields */
    int32_t exact;              /* yarn: 1: the ends of the ramp are not rounded ("truncate": false) */
    int32_t original;           /* llama3, yarn, longrope: the context before it was stretched */
    int32_t list_count;         /* longrope: half of the rotated channels */
    float short_list[ROPE_LIST_MAX], long_list[ROPE_LIST_MAX];
} Rope;

/* The projections of a layer, for low-rank adapters. Those of queries, keys and values are rows of one matrix, and so
 * are gate and up. */
enum { LORA_Q = 1, LORA_K = 2, LORA_V = 4, LORA_O = 8, LORA_GATE = 16, LORA_UP = 32, LORA_DOWN = 64, LORA_ALL = 127 };

/* Properties of single layers. */
enum { LAYER_WINDOW = 1, LAYER_NO_ROPE = 2, MODEL_LAYERS_MAX = 1024, MODEL_HEAD_MAX = 1024 };

/* Low-rank adapters: the projections that have one, and the factor of its output, alpha / rank in LoRA or alpha /
 * sqrt(rank) in rsLoRA (Kalajdzievski 2023, arXiv:2312.03732). rank 0: no adapters, and all tensors are trained. */
typedef struct LoraConfig {
    int32_t rank, targets; /* targets: LORA_ flags */
    float scale;
    int32_t dora; /* 1: DoRA (backend.h) */
} LoraConfig;

#define GPT2_NORM_EPS 1e-5f

typedef struct ModelConfig {
    Family family;
    int32_t context;      /* T: maximum number of positions */
    int32_t vocab;        /* V */
    int32_t padded_vocab; /* Vp: V rounded up to a multiple of 128, as in llm.c */
    int32_t layers;       /* L */
    int32_t heads;        /* H */
    int32_t kv_heads;     /* key/value heads; H in GPT-2 */
    int32_t head_size;    /* D: channels of one head; C / H in GPT-2 */
    int32_t width;        /* C */
    int32_t hidden;       /* F: hidden width of the MLP; 4C in GPT-2 */
    int32_t qkv_bias;     /* 1: queries, keys and values have biases */
    int32_t attproj_bias; /* 1: attention's output layer has a bias */
    int32_t mlp_bias;     /* 1: the layers of the MLP have biases */
    NormKind norm;
    float norm_eps;        /* added to the variance, or to the mean of squares */
    int32_t norm_plus_one; /* 1: a norm multiplies by 1 + its weight (Gemma) */
    NormPlace norm_place;
    QkNorm qk_norm;
    PositionKind position;
    int32_t rotary; /* R: rotated channels of a head, even, at most D; 0 for learned positions */
    Rope rope;
    Rope local_rope; /* of the layers with a window; theta 0: they use `rope` as well */
    MlpKind mlp;
    int32_t tied;      /* 1: the output matrix is that of the embeddings, as in GPT-2; 0: a tensor of its own */
    float embed_scale; /* factor of the embeddings, sqrt(C) in Gemma; 0: none */
    float score_scale; /* factor of attention's scores, query_pre_attn_scalar^-1/2 in Gemma; 0: 1/sqrt(D) */
    float score_cap;   /* scores become cap tanh(score / cap); 0: no cap */
    float logit_cap;   /* logits become cap tanh(logit / cap), before the temperature; 0: no cap */
    int32_t window;    /* keys that a query of a layer with LAYER_WINDOW sees, itself included; 0: no window */
    uint8_t layer[MODEL_LAYERS_MAX]; /* LAYER_ flags of each layer */
    int32_t value_head;              /* 1: a linear head (C -> 1) on the final norm, for rewards and values */
    LoraConfig lora;
} ModelConfig;

/* Channels of the queries of a token, and of the output of attention: C in GPT-2. */
static inline int32_t model_q_width(const ModelConfig *c) { return c->heads * c->head_size; }

/* Channels of the keys of a token, and of its values: C in GPT-2. */
static inline int32_t model_kv_width(const ModelConfig *c) { return c->kv_heads * c->head_size; }

/* Channels of the packed query, key and value rows: 3C in GPT-2. */
static inline int32_t model_qkv_width(const ModelConfig *c) { return model_q_width(c) + 2 * model_kv_width(c); }

/* The factor of the embeddings. */
static inline float model_embed_scale(const ModelConfig *c) { return c->embed_scale > 0 ? c->embed_scale : 1.0f; }

/* Channels that the norm of queries normalises together, and the norm of keys. */
static inline int32_t model_q_group(const ModelConfig *c) {
    return c->qk_norm == QK_NORM_ROW ? model_q_width(c) : c->head_size;
}
static inline int32_t model_k_group(const ModelConfig *c) {
    return c->qk_norm == QK_NORM_ROW ? model_kv_width(c) : c->head_size;
}

/* Channels and groups of a token's queries and keys that are normalised; 0 without such a norm. */
static inline int32_t model_qk_norm_width(const ModelConfig *c) {
    return c->qk_norm == QK_NORM_NONE ? 0 : model_q_width(c) + model_kv_width(c);
}
static inline int32_t model_qk_norm_groups(const ModelConfig *c) {
    return c->qk_norm == QK_NORM_NONE ? 0 : c->qk_norm == QK_NORM_ROW ? 2 : c->heads + c->kv_heads;
}

/* Channels of the cosines and sines of a token: those of the window's layers follow if they have a base of their own. */
static inline int32_t model_rotation(const ModelConfig *c) {
    return c->local_rope.theta > 0 ? 2 * c->rotary : c->rotary;
}

/* Channels of a norm before attention or the MLP, and of one after it; 0 if there is none. */
static inline int32_t model_pre_norm(const ModelConfig *c) { return c->norm_place == NORM_POST ? 0 : c->width; }
static inline int32_t model_post_norm(const ModelConfig *c) { return c->norm_place == NORM_PRE ? 0 : c->width; }

/* Statistics that a norm has per row: a mean only in layernorm, those of norms on outputs only if these exist. */
static inline int32_t model_means(const ModelConfig *c) { return c->norm == NORM_LAYER; }
static inline int32_t model_post_norms(const ModelConfig *c) { return c->norm_place != NORM_PRE; }

/* Channels of the residual stream or of attention's output, whichever is wider. */
static inline int32_t model_narrow(const ModelConfig *c) {
    return c->width > model_q_width(c) ? c->width : model_q_width(c);
}

/* Channels of the MLP's first product: F, or 2F for gates and values. */
static inline int32_t model_fc_width(const ModelConfig *c) { return c->mlp == MLP_GELU ? c->hidden : 2 * c->hidden; }

/* Channels of the gradient of a gated activation, which cannot be computed in place; 0 for GELU, whose gradient can
 * be. */
static inline int32_t model_dact(const ModelConfig *c) { return c->mlp == MLP_GELU ? 0 : c->hidden; }

/* Channels of the widest activation of a layer. */
static inline int32_t model_widest(const ModelConfig *c) {
    return model_fc_width(c) > model_qkv_width(c) ? model_fc_width(c) : model_qkv_width(c);
}

/* ---- low-rank adapters ------------------------------------------------------------------------------------------ */

/* The projections that one matrix computes, in the order of its rows. */
enum { LORA_OF_QKV = LORA_Q | LORA_K | LORA_V, LORA_OF_ATTPROJ = LORA_O, LORA_OF_FC = LORA_GATE | LORA_UP };
enum { LORA_OF_FCPROJ = LORA_DOWN, LORA_RANK_MAX = 1024 };

/* The parts of a matrix that have an adapter: its rows first .. first + count - 1. */
typedef struct LoraParts {
    int parts, rows; /* rows: of all parts */
    int first[LORA_PARTS], count[LORA_PARTS];
} LoraParts;

/* Whether one adapter covers all projections of a matrix, as in the PEFT files of families whose own files store them
 * in one tensor; else each projection has its own. */
static inline bool lora_fused(const ModelConfig *c) { return c->family == FAMILY_GPT2 || c->family == FAMILY_PHI3; }

/* Returns the parts of the matrix of these projections (LORA_OF_...). */
static inline LoraParts lora_parts(const ModelConfig *c, int projections) {
    const struct {
        int flag, rows;
    } all[] = {{LORA_Q, model_q_width(c)}, {LORA_K, model_kv_width(c)}, {LORA_V, model_kv_width(c)},
               {LORA_O, c->width},         {LORA_GATE, c->hidden},      {LORA_UP, c->mlp == MLP_GELU ? 0 : c->hidden},
               {LORA_DOWN, c->width}};
    LoraParts p = {0};
    if (!c->lora.rank || !(c->lora.targets & projections)) return p;
    for (size_t i = 0, row = 0; i < sizeof all / sizeof *all; i++) {
        if (!(all[i].flag & projections) || !all[i].rows) continue;
        if (lora_fused(c)) {
            p.parts = 1;
            p.count[0] += all[i].rows;
        } else if (c->lora.targets & all[i].flag) {
            p.first[p.parts] = (int)row;
            p.count[p.parts++] = all[i].rows;
        }
        row += (size_t)all[i].rows;
    }
    for (int i = 0; i < p.parts; i++) p.rows += p.count[i];
    return p;
}

/* Output rows of projections: of all of them together. */
static inline int lora_rows(const ModelConfig *c, int projections) {
    ModelConfig all = *c;
    all.lora.rank = 1;
    all.lora.targets = projections;
    return lora_parts(&all, projections).rows;
}

/* Channels of the adapters' inner activations, and rows of their outputs, for one matrix. */
static inline int lora_inner(const ModelConfig *c, int projections) {
    return lora_parts(c, projections).parts * c->lora.rank;
}
static inline int lora_widest(const ModelConfig *c) {
    static const int matrices[] = {LORA_OF_QKV, LORA_OF_ATTPROJ, LORA_OF_FC, LORA_OF_FCPROJ};
    int widest = 0;
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        const int inner = lora_inner(c, matrices[i]);
        widest = inner > widest ? inner : widest;
    }
    return widest;
}
static inline int lora_outer(const ModelConfig *c, int projections) { return lora_parts(c, projections).rows; }

/* Channels that DoRA keeps for the backward pass of one matrix, and channels of its gradient; 0 without DoRA. */
static inline int dora_outer(const ModelConfig *c, int projections) {
    return c->lora.dora ? lora_outer(c, projections) : 0;
}
static inline int dora_widest(const ModelConfig *c) {
    return !c->lora.dora ? 0 : model_widest(c) > c->width ? model_widest(c) : c->width;
}

/* ---- GPT-2 ------------------------------------------------------------------------------------------------------ */

static inline int32_t gpt2_padded_vocab(int32_t vocab) { return (vocab + 127) / 128 * 128; }

/* GPT-2 of the given shape, without a value head. If the heads do not divide the width, its head_size is 0, which
 * model_config_check() rejects. */
static inline ModelConfig gpt2_config(int32_t layers, int32_t heads, int32_t width, int32_t vocab, int32_t context) {
    ModelConfig c = {.context = context,
                     .vocab = vocab,
                     .padded_vocab = gpt2_padded_vocab(vocab),
                     .layers = layers,
                     .heads = heads,
                     .kv_heads = heads,
                     .head_size = heads > 0 && width % heads == 0 ? width / heads : 0,
                     .width = width,
                     .hidden = 4 * width,
                     .qkv_bias = 1,
                     .attproj_bias = 1,
                     .mlp_bias = 1,
                     .norm_eps = GPT2_NORM_EPS,
                     .tied = 1};
    return c;
}

/* Checks that a model of this configuration can be built. `what` (a file or option) begins the message. Every size read
 * from a file is checked here before anything is allocated; the bounds keep all products of two sizes within 62
 * bits. */
static inline bool model_config_check(const ModelConfig *c, const char *what, Error *e) {
    const struct {
        const char *name;
        int64_t value, low, high;
    } field[] = {{"context length", c->context, 1, 1 << 20},
                 {"vocabulary", c->vocab, 1, (1 << 22) - 128},
                 {"padded vocabulary", c->padded_vocab, c->vocab, 1 << 22},
                 {"layers", c->layers, 1, MODEL_LAYERS_MAX},
                 {"heads", c->heads, 1, 1024},
                 {"key/value heads", c->kv_heads, 1, c->heads},
                 {"width", c->width, 1, 1 << 16},
                 {"hidden width", c->hidden, 1, 1 << 18},
                 {"norm", (int32_t)c->norm, NORM_LAYER, NORM_RMS},
                 {"position", (int32_t)c->position, POSITION_LEARNED, POSITION_ROTARY},
                 {"rotated channels", c->rotary, 0, c->position == POSITION_ROTARY ? c->head_size : 0},
                 {"mlp", (int32_t)c->mlp, MLP_GELU, MLP_GEGLU},
                 {"bias of queries, keys and values", c->qkv_bias, 0, 1},
                 {"bias of attention's output", c->attproj_bias, 0, 1},
                 {"bias of the MLP", c->mlp_bias, 0, 1},
                 {"norm with 1 + weight", c->norm_plus_one, 0, 1},
                 {"place of norms", (int32_t)c->norm_place, NORM_PRE, NORM_BOTH},
                 {"norm of queries and keys", (int32_t)c->qk_norm, QK_NORM_NONE, QK_NORM_ROW},
                 {"window", c->window, 0, INT32_MAX},
                 {"tied output matrix", c->tied, 0, 1},
                 {"rank of adapters", c->lora.rank, 0, LORA_RANK_MAX},
                 {"targets of adapters", c->lora.targets, c->lora.rank ? 1 : 0, LORA_ALL},
                 {"value head", c->value_head, 0, 1}};
    for (size_t i = 0; i < sizeof field / sizeof *field; i++)
        if (field[i].value < field[i].low || field[i].value > field[i].high)
            return error_set(e, "%s: %s is %lld, expected %lld to %lld", what, field[i].name, (long long)field[i].value,
                             (long long)field[i].low, (long long)field[i].high);
    if (!c->head_size) return error_set(e, "%s: width %d is not a multiple of %d heads", what, c->width, c->heads);
    if (c->head_size < 0 || c->head_size > MODEL_HEAD_MAX)
        return error_set(e, "%s: heads of %d channels (width %d, %d heads), expected 1 to %d", what, c->head_size,
                         c->width, c->heads, MODEL_HEAD_MAX);
    if (c->norm == NORM_LAYER && (c->norm_place != NORM_PRE || c->norm_plus_one))
        return error_set(e, "%s: layernorm is supported before attention and the MLP only, without 1 + weight", what);
    if (c->rotary % 2) return error_set(e, "%s: %d rotated channels, expected an even number", what, c->rotary);
    if (c->heads % c->kv_heads)
        return error_set(e, "%s: %d heads are not a multiple of %d key/value heads", what, c->heads, c->kv_heads);
    return true;
}

/* Whether a text is one of llm.c's descriptors, such as d12 or gpt2:c768. */
static inline bool gpt2_config_named(const char *text) {
    const char *s = !strncmp(text, "gpt2:", 5) ? text + 5 : text;
    char *end;
    if ((s[0] != 'd' && (s[0] != 'c' || s == text)) || s[1] < '0' || s[1] > '9') return false;
    strtol(s + 1, &end, 10);
    return !*end;
}

/* llm.c's descriptors: d12 or gpt2:d48 (depth, with GPT-2's width) or gpt2:c768 (channels). Returns false if `text` is
 * not a descriptor. Otherwise *ok is set to whether its model can be built. */
static inline bool gpt2_config_descriptor(const char *text, ModelConfig *c, bool *ok, Error *e) {
    static const int known[][3] = {/* depth, channels, heads: train_gpt2.cu, gpt2_set_hyperparameters */
                                   {6, 384, 6},    {12, 768, 12},  {24, 1024, 16},
                                   {36, 1280, 20}, {48, 1600, 25}, {60, 1920, 30}};
    const char *s = !strncmp(text, "gpt2:", 5) ? text + 5 : text;
    if (!gpt2_config_named(text)) return false;
    const long number = strtol(s + 1, NULL, 10);
    *ok = true;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][s[0] == 'd' ? 0 : 1] == number) {
            *c = gpt2_config(known[i][0], known[i][2], known[i][1], 50257, 1024);
            return true;
        }
    if (s[0] == 'c' || number < 1 || number > 1024) {
        *ok = error_set(e, "%s: no GPT-2 of that size is known; use a depth of 1 to 1024, such as d12", text);
        return true;
    }
    /* other depths: 64 channels per layer and heads of 64 channels, as at depths 6 and 12 */
    *c = gpt2_config((int32_t)number, (int32_t)number, 64 * (int32_t)number, 50257, 1024);
    return true;
}

#endif
