/* config.h - model configuration and the table of a model's tensors.
 *
 * The table drives sizes, checkpoint order, initial values, weight decay, names and printing. Its order is that of
 * llm.c's file. A tensor holds all its layers one after another, each row-major (out, in). The tensors of the value
 * head come last; a checkpoint stores them in its trailer, which llm.c does not read.
 */
#ifndef LLMC_MODEL_CONFIG_H
#define LLMC_MODEL_CONFIG_H

#include "../base/error.h"
#include <math.h>

/* The parts in which model families differ. The first value of each is GPT-2's; a file with any other is refused. */
typedef enum { NORM_LAYER } NormKind;
typedef enum { POSITION_LEARNED } PositionKind;
typedef enum { MLP_GELU } MlpKind;

typedef struct ModelConfig {
    int32_t context;      /* T: maximum number of positions */
    int32_t vocab;        /* V */
    int32_t padded_vocab; /* Vp: V rounded up to a multiple of 128, as in llm.c */
    int32_t layers;       /* L */
    int32_t heads;        /* H */
    int32_t kv_heads;     /* key/value heads; H in GPT-2 */
    int32_t width;        /* C */
    int32_t hidden;       /* F: hidden width of the MLP; 4C in GPT-2 */
    NormKind norm;
    PositionKind position;
    MlpKind mlp;
    int32_t value_head; /* 1: a linear head (C -> 1) on the final layernorm, for rewards and values */
} ModelConfig;

typedef enum { INIT_ZERO, INIT_ONE, INIT_NORMAL, INIT_RESIDUAL, INIT_HEAD } InitKind;

// clang-format off
/*    name      rows               columns            layers     init           decay Hugging Face name */
#define MODEL_TENSORS(T)                                                                                          \
    T(wte,      c->padded_vocab,   c->width,          1,         INIT_NORMAL,   1,    "wte.weight")              \
    T(wpe,      c->context,        c->width,          1,         INIT_NORMAL,   1,    "wpe.weight")              \
    T(ln1w,     1,                 c->width,          c->layers, INIT_ONE,      0,    "h.%d.ln_1.weight")        \
    T(ln1b,     1,                 c->width,          c->layers, INIT_ZERO,     0,    "h.%d.ln_1.bias")          \
    T(qkvw,     model_qkv_width(c), c->width,          c->layers, INIT_NORMAL,   1,    "h.%d.attn.c_attn.weight") \
    T(qkvb,     1,                 model_qkv_width(c), c->layers, INIT_ZERO,     0,    "h.%d.attn.c_attn.bias")   \
    T(attprojw, c->width,          c->width,          c->layers, INIT_RESIDUAL, 1,    "h.%d.attn.c_proj.weight") \
    T(attprojb, 1,                 c->width,          c->layers, INIT_ZERO,     0,    "h.%d.attn.c_proj.bias")   \
    T(ln2w,     1,                 c->width,          c->layers, INIT_ONE,      0,    "h.%d.ln_2.weight")        \
    T(ln2b,     1,                 c->width,          c->layers, INIT_ZERO,     0,    "h.%d.ln_2.bias")          \
    T(fcw,      c->hidden,         c->width,          c->layers, INIT_NORMAL,   1,    "h.%d.mlp.c_fc.weight")    \
    T(fcb,      1,                 c->hidden,         c->layers, INIT_ZERO,     0,    "h.%d.mlp.c_fc.bias")      \
    T(fcprojw,  c->width,          c->hidden,         c->layers, INIT_RESIDUAL, 1,    "h.%d.mlp.c_proj.weight")  \
    T(fcprojb,  1,                 c->width,          c->layers, INIT_ZERO,     0,    "h.%d.mlp.c_proj.bias")    \
    T(lnfw,     1,                 c->width,          1,         INIT_ONE,      0,    "ln_f.weight")             \
    T(lnfb,     1,                 c->width,          1,         INIT_ZERO,     0,    "ln_f.bias")               \
    T(valuew,   c->value_head,     c->width,          1,         INIT_HEAD,     1,    "score.weight")            \
    T(valueb,   c->value_head,     1,                 1,         INIT_ZERO,     0,    "score.bias")
// clang-format on

enum {
#define T(name, rows, columns, layers, init, decay, hf) TENSOR_##name,
    MODEL_TENSORS(T)
#undef T
        TENSOR_COUNT
};
enum { GPT2_FILE_TENSORS = TENSOR_valuew }; /* number of tensors in llm.c's part of the file */

typedef struct TensorInfo {
    const char *name, *hf_name;
    size_t rows, columns, layers; /* rows and columns of one layer; layers is 1 if the tensor is not per layer */
    size_t offset, size;          /* in elements, over all layers; size is 0 for a head that the model lacks */
    InitKind init;
    bool decay;
} TensorInfo;

/* Does each layer have one? */
static inline bool tensor_of_layer(const TensorInfo *t) { return t->size && strchr(t->hf_name, '%'); }

/* Channels of the packed query, key and value rows: 3C in GPT-2. */
static inline int32_t model_qkv_width(const ModelConfig *c) {
    return c->width + 2 * c->kv_heads * (c->width / c->heads);
}

/* Fills in t and returns the number of elements of all tensors. */
static inline size_t model_tensors(const ModelConfig *c, TensorInfo t[TENSOR_COUNT]) {
    int i = 0;
    size_t offset = 0;
#define T(name_, rows_, columns_, layers_, init_, decay_, hf_)                                                         \
    t[i] =                                                                                                             \
        (TensorInfo){#name_, hf_, (size_t)(rows_), (size_t)(columns_), (size_t)(layers_), offset, 0, init_, decay_};   \
    t[i].size = t[i].rows * t[i].columns * t[i].layers;                                                                \
    offset += t[i++].size;
    MODEL_TENSORS(T)
#undef T
    return offset;
}

/* Elements in llm.c's part of a checkpoint: Vp C + T C + L (12 C^2 + 13 C) + 2 C. */
static inline size_t gpt2_file_elements(const ModelConfig *c) {
    TensorInfo t[TENSOR_COUNT];
    model_tensors(c, t);
    return t[GPT2_FILE_TENSORS].offset;
}

static inline int32_t gpt2_padded_vocab(int32_t vocab) { return (vocab + 127) / 128 * 128; }

/* GPT-2 of the given shape, without a value head. */
static inline ModelConfig gpt2_config(int32_t layers, int32_t heads, int32_t width, int32_t vocab, int32_t context) {
    ModelConfig c = {.context = context,
                     .vocab = vocab,
                     .padded_vocab = gpt2_padded_vocab(vocab),
                     .layers = layers,
                     .heads = heads,
                     .kv_heads = heads,
                     .width = width,
                     .hidden = 4 * width};
    return c;
}

/* Is this a model that can be built? `what` (a file or option) begins the message. Every size read from a file is
 * checked here before anything is allocated; the bounds keep all products of two sizes within 62 bits. */
static inline bool model_config_check(const ModelConfig *c, const char *what, Error *e) {
    const struct {
        const char *name;
        int64_t value, low, high;
    } field[] = {{"context length", c->context, 1, 1 << 20},
                 {"vocabulary", c->vocab, 1, (1 << 22) - 128},
                 {"padded vocabulary", c->padded_vocab, c->vocab, 1 << 22},
                 {"layers", c->layers, 1, 1024},
                 {"heads", c->heads, 1, 1024},
                 {"key/value heads", c->kv_heads, 1, c->heads},
                 {"width", c->width, 1, 1 << 16},
                 {"hidden width", c->hidden, 1, 1 << 18},
                 {"norm", (int32_t)c->norm, NORM_LAYER, NORM_LAYER},
                 {"position", (int32_t)c->position, POSITION_LEARNED, POSITION_LEARNED},
                 {"mlp", (int32_t)c->mlp, MLP_GELU, MLP_GELU},
                 {"value head", c->value_head, 0, 1}};
    for (size_t i = 0; i < sizeof field / sizeof *field; i++)
        if (field[i].value < field[i].low || field[i].value > field[i].high)
            return error_set(e, "%s: %s is %lld, expected %lld to %lld", what, field[i].name, (long long)field[i].value,
                             (long long)field[i].low, (long long)field[i].high);
    if (c->width % c->heads)
        return error_set(e, "%s: width %d is not a multiple of %d heads", what, c->width, c->heads);
    if (c->width / c->heads > 1024)
        return error_set(e, "%s: heads of %d channels (width %d, %d heads), expected at most 1024", what,
                         c->width / c->heads, c->width, c->heads);
    if (c->heads % c->kv_heads)
        return error_set(e, "%s: %d heads are not a multiple of %d key/value heads", what, c->heads, c->kv_heads);
    return true;
}

/* llm.c's descriptors: d12 or gpt2:d48 (depth, with GPT-2's width) or gpt2:c768 (channels). Returns false if `text` is
 * not a descriptor. Otherwise *ok is set to whether its model can be built. */
static inline bool gpt2_config_descriptor(const char *text, ModelConfig *c, bool *ok, Error *e) {
    static const int known[][3] = {/* depth, channels, heads: train_gpt2.cu, gpt2_set_hyperparameters */
                                   {6, 384, 6},    {12, 768, 12},  {24, 1024, 16},
                                   {36, 1280, 20}, {48, 1600, 25}, {60, 1920, 30}};
    const char *s = !strncmp(text, "gpt2:", 5) ? text + 5 : text;
    char *end;
    if ((s[0] != 'd' && (s[0] != 'c' || s == text)) || s[1] < '0' || s[1] > '9') return false;
    const long number = strtol(s + 1, &end, 10);
    if (*end) return false;
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
