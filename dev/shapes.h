/* shapes.h - shapes of published models, for benchmarks and predictions with random weights.
 *
 *     int model = SHAPE_SMOLLM2_135M;
 *     OPTION_CHOICE("model", 0, &model, SHAPE_CHOICES, "shape of the model")
 *     const ModelConfig c = shape_config(model, 1024);
 *
 * The numbers are those of the models' config.json.
 */
#ifndef LLMC_DEV_SHAPES_H
#define LLMC_DEV_SHAPES_H

#include "../llmc/model/backend.h" /* MLP_SWIGLU, NORM_RMS */
#include "../llmc/model/config.h"  /* QK_NORM_NONE, QK_NORM_HEAD, ModelConfig, FAMILY_LLAMA, ... */

// clang-format off
/*    name                      layers heads kv  D    C     F      V       theta  tied bias norm of q, k  */
#define SHAPES(S)                                                                                                      \
    S(gpt2_124m,    "gpt2-124m",    12, 12, 12,  64,  768,  3072,  50257,  0,     1,   1,   QK_NORM_NONE)              \
    S(gpt2_1558m,   "gpt2-1.5b",    48, 25, 25,  64, 1600,  6400,  50257,  0,     1,   1,   QK_NORM_NONE)              \
    S(smollm2_135m, "smollm2-135m", 30,  9,  3,  64,  576,  1536,  49152,  1e5f,  1,   0,   QK_NORM_NONE)              \
    S(qwen2_0_5b,   "qwen2.5-0.5b", 24, 14,  2,  64,  896,  4864, 151936,  1e6f,  1,   1,   QK_NORM_NONE)              \
    S(qwen3_0_6b,   "qwen3-0.6b",   28, 16,  8, 128, 1024,  3072, 151936,  1e6f,  1,   0,   QK_NORM_HEAD)              \
    S(llama_1b,     "llama-3.2-1b", 16, 32,  8,  64, 2048,  8192, 128256,  5e5f,  1,   0,   QK_NORM_NONE)              \
    S(qwen3_8b,     "qwen3-8b",     36, 32,  8, 128, 4096, 12288, 151936,  1e6f,  0,   0,   QK_NORM_HEAD)
// clang-format on

#define SHAPE_CHOICES "gpt2-124m|gpt2-1.5b|smollm2-135m|qwen2.5-0.5b|qwen3-0.6b|llama-3.2-1b|qwen3-8b"

enum {
#define S(id, name, L, H, K, D, C, F, V, theta, tied, bias, qk_norm) SHAPE_##id,
    SHAPES(S)
#undef S
        SHAPE_COUNT
};

/* The name of a shape. */
static inline const char *shape_name(int shape) {
    static const char *const names[] = {
#define S(id, name, L, H, K, D, C, F, V, theta, tied, bias, qk_norm) name,
        SHAPES(S)
#undef S
    };
    return names[shape];
}

/* The configuration of a shape with this many positions. */
static inline ModelConfig shape_config(int shape, int32_t context) {
    static const struct {
        int32_t layers, heads, kv_heads, head_size, width, hidden, vocab;
        float theta;
        int32_t tied, bias;
        QkNorm qk_norm;
    } of[] = {
#define S(id, name, L, H, K, D, C, F, V, theta, tied, bias, qk_norm) {L, H, K, D, C, F, V, theta, tied, bias, qk_norm},
        SHAPES(S)
#undef S
    };
    ModelConfig c = gpt2_config(of[shape].layers, of[shape].heads, of[shape].width, of[shape].vocab, context);
    if (of[shape].theta == 0) return c;
    c.family = of[shape].qk_norm == QK_NORM_HEAD ? FAMILY_QWEN3 : of[shape].bias ? FAMILY_QWEN2 : FAMILY_LLAMA;
    c.kv_heads = of[shape].kv_heads;
    c.head_size = of[shape].head_size;
    c.hidden = of[shape].hidden;
    c.norm = NORM_RMS;
    c.position = POSITION_ROTARY;
    c.rotary = c.head_size;
    c.rope = (Rope){.theta = of[shape].theta};
    c.mlp = MLP_SWIGLU;
    c.tied = of[shape].tied;
    c.qk_norm = of[shape].qk_norm;
    c.qkv_bias = of[shape].bias;
    c.attproj_bias = c.mlp_bias = 0;
    return c;
}

#endif
