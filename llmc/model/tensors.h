/* tensors.h - the table of a model's tensors.
 *
 * The table drives sizes, checkpoint order, initial values, weight decay, names and printing. Its order is that of
 * llm.c's file. A tensor holds all its layers one after another, each row-major (out, in). The tensors of the value
 * head and of low-rank adapters come last; a checkpoint stores them in its trailer, which llm.c does not read. If a
 * model has adapters, only these last tensors are trained.
 *
 * A tensor that a model lacks has 0 rows, so its size is 0, and sizes, files, the optimizer and ranks skip it. `stream`
 * numbers the random values of a new model's tensor; it never changes, so that a seed always gives the same model.
 *
 *     TensorInfo t[TENSOR_COUNT];
 *     size_t parameters = model_tensors(&config, t);       // t[TENSOR_qkvw].offset, ...
 */
#ifndef LLMC_MODEL_TENSORS_H
#define LLMC_MODEL_TENSORS_H

#include "backend.h" /* NORM_LAYER */
#include "config.h"  /* lora_outer, lora_inner, LORA_OF_ATTPROJ, LORA_OF_FC, ... */

typedef enum { INIT_ZERO, INIT_ONE, INIT_NORMAL, INIT_RESIDUAL, INIT_HEAD, INIT_LORA } InitKind;

// clang-format off
/*    name      rows                                                  columns             per    initial values  stream  decay */
#define MODEL_TENSORS(T, c)                                                                                                  \
    T(wte,      (c)->padded_vocab,                                    (c)->width,         MODEL, INIT_NORMAL,    0,      1)  \
    T(wpe,      (c)->position == POSITION_LEARNED ? (c)->context : 0, (c)->width,         MODEL, INIT_NORMAL,    1,      1)  \
    T(ln1w,     (c)->norm_place != NORM_POST,                         (c)->width,         LAYER, INIT_ONE,       2,      0)  \
    T(ln1b,     (c)->norm == NORM_LAYER,                              (c)->width,         LAYER, INIT_ZERO,      3,      0)  \
    T(qkvw,     model_qkv_width(c),                                   (c)->width,         LAYER, INIT_NORMAL,    4,      1)  \
    T(qkvb,     (c)->qkv_bias,                                        model_qkv_width(c), LAYER, INIT_ZERO,      5,      0)  \
    T(qnormw,   (c)->qk_norm != QK_NORM_NONE,                         model_q_group(c),   LAYER, INIT_ONE,       19,     0)  \
    T(knormw,   (c)->qk_norm != QK_NORM_NONE,                         model_k_group(c),   LAYER, INIT_ONE,       20,     0)  \
    T(attprojw, (c)->width,                                           model_q_width(c),   LAYER, INIT_RESIDUAL,  6,      1)  \
    T(attprojb, (c)->attproj_bias,                                    (c)->width,         LAYER, INIT_ZERO,      7,      0)  \
    T(attpostw, (c)->norm_place != NORM_PRE,                          (c)->width,         LAYER, INIT_ONE,       21,     0)  \
    T(ln2w,     (c)->norm_place != NORM_POST,                         (c)->width,         LAYER, INIT_ONE,       8,      0)  \
    T(ln2b,     (c)->norm == NORM_LAYER,                              (c)->width,         LAYER, INIT_ZERO,      9,      0)  \
    T(fcw,      model_fc_width(c),                                    (c)->width,         LAYER, INIT_NORMAL,    10,     1)  \
    T(fcb,      (c)->mlp_bias,                                        model_fc_width(c),  LAYER, INIT_ZERO,      11,     0)  \
    T(fcprojw,  (c)->width,                                           (c)->hidden,        LAYER, INIT_RESIDUAL,  12,     1)  \
    T(fcprojb,  (c)->mlp_bias,                                        (c)->width,         LAYER, INIT_ZERO,      13,     0)  \
    T(mlppostw, (c)->norm_place != NORM_PRE,                          (c)->width,         LAYER, INIT_ONE,       22,     0)  \
    T(lnfw,     1,                                                    (c)->width,         MODEL, INIT_ONE,       14,     0)  \
    T(lnfb,     (c)->norm == NORM_LAYER,                              (c)->width,         MODEL, INIT_ZERO,      15,     0)  \
    T(headw,    (c)->tied ? 0 : (c)->padded_vocab,                    (c)->width,         MODEL, INIT_NORMAL,    18,     1)  \
    T(valuew,   (c)->value_head,                                      (c)->width,         MODEL, INIT_HEAD,      16,     1)  \
    T(valueb,   (c)->value_head,                                      1,                  MODEL, INIT_ZERO,      17,     0)  \
    T(qkvla,    lora_inner(c, LORA_OF_QKV),                           (c)->width,         LAYER, INIT_LORA,      23,     1)  \
    T(qkvlb,    lora_outer(c, LORA_OF_QKV),                           (c)->lora.rank,     LAYER, INIT_ZERO,      24,     1)  \
    T(attla,    lora_inner(c, LORA_OF_ATTPROJ),                       model_q_width(c),   LAYER, INIT_LORA,      25,     1)  \
    T(attlb,    lora_outer(c, LORA_OF_ATTPROJ),                       (c)->lora.rank,     LAYER, INIT_ZERO,      26,     1)  \
    T(fcla,     lora_inner(c, LORA_OF_FC),                            (c)->width,         LAYER, INIT_LORA,      27,     1)  \
    T(fclb,     lora_outer(c, LORA_OF_FC),                            (c)->lora.rank,     LAYER, INIT_ZERO,      28,     1)  \
    T(fcprojla, lora_inner(c, LORA_OF_FCPROJ),                        (c)->hidden,        LAYER, INIT_LORA,      29,     1)  \
    T(fcprojlb, lora_outer(c, LORA_OF_FCPROJ),                        (c)->lora.rank,     LAYER, INIT_ZERO,      30,     1)  \
    T(qkvlm,    (c)->lora.dora,                                       lora_outer(c, LORA_OF_QKV),       LAYER, INIT_ZERO, 31, 0) \
    T(attlm,    (c)->lora.dora,                                       lora_outer(c, LORA_OF_ATTPROJ),   LAYER, INIT_ZERO, 32, 0) \
    T(fclm,     (c)->lora.dora,                                       lora_outer(c, LORA_OF_FC),        LAYER, INIT_ZERO, 33, 0) \
    T(fcprojlm, (c)->lora.dora,                                       lora_outer(c, LORA_OF_FCPROJ),    LAYER, INIT_ZERO, 34, 0)
// clang-format on

enum {
#define T(name, rows, columns, per, init, stream, decay) TENSOR_##name,
    MODEL_TENSORS(T, )
#undef T
        TENSOR_COUNT
};
enum { GPT2_FILE_TENSORS = TENSOR_valuew }; /* number of tensors in llm.c's part of the file */
enum { BASE_TENSORS = TENSOR_valuew };      /* the tensors that are not trained if the model has adapters */
enum { FIRST_LORA_TENSOR = TENSOR_qkvla, FIRST_DORA_TENSOR = TENSOR_qkvlm };

typedef struct TensorInfo {
    const char *name;
    size_t rows, columns, layers; /* rows and columns of one layer; layers is 1 if the tensor is not per layer */
    size_t offset, size;          /* in elements, over all layers; size is 0 for a tensor that the model lacks */
    size_t place;                 /* as offset, in the memory of a model's weights, which lacks quantised matrices */
    InitKind init;
    uint64_t stream;
    bool decay;
    bool per_layer;
    bool trained; /* false for the tensors of a model with adapters that are not theirs */
} TensorInfo;

/* Whether the tensor has gradients, and one of them per layer. */
static inline bool tensor_trained(const TensorInfo *t) { return t->size && t->trained; }
static inline bool tensor_of_layer(const TensorInfo *t) { return tensor_trained(t) && t->per_layer; }

/* Fills in t and returns the number of elements of all tensors. */
static inline size_t model_tensors(const ModelConfig *c, TensorInfo t[TENSOR_COUNT]) {
    enum { MODEL, LAYER };
    int i = 0;
    size_t offset = 0;
#define T(name_, rows_, columns_, per_, init_, stream_, decay_)                                                        \
    t[i] = (TensorInfo){.name = #name_,                                                                                \
                        .rows = (size_t)(rows_),                                                                       \
                        .columns = (size_t)(columns_),                                                                 \
                        .layers = (per_) == LAYER ? (size_t)c->layers : 1,                                             \
                        .offset = offset,                                                                              \
                        .place = offset,                                                                               \
                        .init = init_,                                                                                 \
                        .stream = stream_,                                                                             \
                        .decay = decay_,                                                                               \
                        .trained = !c->lora.rank || i >= BASE_TENSORS,                                                 \
                        .per_layer = (per_) == LAYER};                                                                 \
    t[i].size = t[i].rows * t[i].columns * t[i].layers;                                                                \
    offset += t[i++].size;
    MODEL_TENSORS(T, c)
#undef T
    return offset;
}

/* The matrices that can be quantised: those of a layer's linear layers, the token embeddings and the output matrix. */
enum { MATRIX_COUNT = 6, LINEAR_MATRICES = 4 };
static const int matrix_tensor[MATRIX_COUNT] = {TENSOR_qkvw,    TENSOR_attprojw, TENSOR_fcw,
                                                TENSOR_fcprojw, TENSOR_wte,      TENSOR_headw};

/* The number of the matrix that a tensor is, or -1. */
static inline int tensor_matrix(int tensor) {
    for (int i = 0; i < MATRIX_COUNT; i++)
        if (matrix_tensor[i] == tensor) return i;
    return -1;
}

/* Elements in llm.c's part of a checkpoint: Vp C + T C + L (12 C^2 + 13 C) + 2 C. */
static inline size_t gpt2_file_elements(const ModelConfig *c) {
    TensorInfo t[TENSOR_COUNT];
    model_tensors(c, t);
    return t[GPT2_FILE_TENSORS].offset;
}

#endif
