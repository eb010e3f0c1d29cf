/* quantized.h - block types of weights: 16-bit floats, and 8, 6, 5 and 4 bits with a scale per block.
 *
 * The types and their ids are those of GGUF (ggml-common.h). A row is a whole number of blocks; a block holds the values
 * of consecutive elements, and a scale d, which is a float16. q is an element's integer:
 *
 *     type            id         bytes  elements  fields of a block                                      value
 *     F32 F16 BF16    0, 1, 30   4, 2, 2   1
 *     Q4_0            2             18     32     d, 16 bytes                                            d (q - 8)
 *     Q4_1            3             20     32     d, m, 16 bytes                                         d q + m
 *     Q5_0            6             22     32     d, 4 bytes of fifth bits, 16 bytes                     d (q - 16)
 *     Q5_1            7             24     32     d, m, 4 bytes of fifth bits, 16 bytes                  d q + m
 *     Q8_0            8             34     32     d, 32 int8                                             d q
 *     Q4_K            12           144    256     d, dmin, 12 bytes of scales, 128 bytes                 d s q - dmin t
 *     Q5_K            13           176    256     d, dmin, 12 bytes of scales, 32 of fifth bits, 128     d s q - dmin t
 *     Q6_K            14           210    256     128 bytes, 64 bytes of upper bits, 16 int8 scales, d   d s (q - 32)
 *
 * s and t are scales of 32 (Q6_K: 16) elements. The values of dequantisation equal those of the gguf package (gguf-py,
 * quants.py) bit for bit, whether or not the compiler fuses a product and a sum: d has 11 significant bits, a scale at
 * most 7 and q at most 5, so that every product is exact in float32, and only the last sum is rounded.
 *
 *     enum { COLUMNS = 64 };                               // a multiple of 32
 *     float weights[COLUMNS] = {1};
 *     void *blocks = malloc(quant_bytes(QUANT_Q8_0, COLUMNS));
 *     quant_encode(QUANT_Q8_0, weights, blocks, COLUMNS);
 *     quant_decode(QUANT_Q8_0, blocks, weights, COLUMNS);
 */
#ifndef LLMC_MODEL_QUANTIZED_H
#define LLMC_MODEL_QUANTIZED_H

#include <float.h>
#include "../base/half.h" /* half_from_f16, half_to_f16, half_from_bf16, half_to_bf16 */
#include "backend.h"      /* QuantType, QUANT_F16, QUANT_F32, QUANT_Q4_0, ... */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { QUANT_BLOCK = 32, QUANT_SUPER = 256, QUANT_Q8_0_BYTES = 34, QUANT_Q4_0_BYTES = 18 };

typedef struct QuantInfo {
    const char *name;
    uint32_t gguf;   /* GGUF's id */
    uint32_t bytes;  /* bytes of a block */
    uint32_t values; /* elements of a block */
    bool encodes;    /* quant_encode() writes the type */
} QuantInfo;

static inline const QuantInfo *quant_info(QuantType type) {
    // clang-format off
    static const QuantInfo info[QUANT_COUNT] = {
        /*               name    id  bytes              elements     quant_encode() */
        [QUANT_F32]  = {"F32",   0,  4,                 1,           true},
        [QUANT_F16]  = {"F16",   1,  2,                 1,           true},
        [QUANT_BF16] = {"BF16", 30,  2,                 1,           true},
        [QUANT_Q4_0] = {"Q4_0",  2,  QUANT_Q4_0_BYTES,  QUANT_BLOCK, true},
        [QUANT_Q4_1] = {"Q4_1",  3,  20,                QUANT_BLOCK, false},
        [QUANT_Q5_0] = {"Q5_0",  6,  22,                QUANT_BLOCK, false},
        [QUANT_Q5_1] = {"Q5_1",  7,  24,                QUANT_BLOCK, false},
        [QUANT_Q8_0] = {"Q8_0",  8,  QUANT_Q8_0_BYTES,  QUANT_BLOCK, true},
        [QUANT_Q4_K] = {"Q4_K", 12,  144,               QUANT_SUPER, false},
        [QUANT_Q5_K] = {"Q5_K", 13,  176,               QUANT_SUPER, false},
        [QUANT_Q6_K] = {"Q6_K", 14,  210,               QUANT_SUPER, false}};
    // clang-format on
    return &info[type];
}

/* Finds the type with GGUF's id. Returns false for a type that this project does not read. */
static inline bool quant_of_gguf(uint32_t id, QuantType *type) {
    for (int i = 0; i < QUANT_COUNT; i++)
        if (quant_info((QuantType)i)->gguf == id) {
            *type = (QuantType)i;
            return true;
        }
    return false;
}

/* The name of GGUF's type `id`, also of the types that are not read; NULL if the id is unknown. */
static inline const char *quant_gguf_name(uint32_t id) {
    // clang-format off
    static const char *const name[] = {
        "F32", "F16", "Q4_0", "Q4_1", NULL, NULL, "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64",
        "F64", "IQ1_M", "BF16", NULL, NULL, NULL, "TQ1_0", "TQ2_0", NULL, NULL, NULL, "MXFP4", "NVFP4"};
    // clang-format on
    return id < sizeof name / sizeof *name ? name[id] : NULL;
}

/* Bytes of n elements; n is a multiple of the elements of a block. */
static inline size_t quant_bytes(QuantType type, size_t n) {
    return n / quant_info(type)->values * quant_info(type)->bytes;
}

/* ---- 16-bit floats --------------------------------------------------------------------------------------------- */

static inline uint16_t quant_half_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

static inline float quant_scale_at(const uint8_t *p) { return half_from_f16(quant_half_at(p)); }

static inline void quant_put_scale(uint8_t *p, float d) {
    const uint16_t h = half_to_f16(d);
    memcpy(p, &h, sizeof h);
}

/* ---- decoding -------------------------------------------------------------------------------------------------- */

static inline void quant_decode_f16(const uint8_t *b, float *out, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) out[i] = half_from_f16(quant_half_at(b + 2 * i));
}

static inline void quant_decode_bf16(const uint8_t *b, float *out, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) out[i] = half_from_bf16(quant_half_at(b + 2 * i));
}

static inline void quant_decode_q8_0(const uint8_t *b, float *out) {
    const float d = quant_scale_at(b);
    const int8_t *q = (const int8_t *)(b + 2);
#pragma omp simd
    for (int i = 0; i < QUANT_BLOCK; i++) out[i] = d * (float)q[i];
}

/* A block of 4-bit integers: element i < 16 is the low half of byte i, element i >= 16 the high half of byte i - 16. */
static inline void quant_decode_q4(const uint8_t *q, float d, int zero, float m, float *out) {
#pragma omp simd
    for (int i = 0; i < QUANT_BLOCK / 2; i++) {
        out[i] = d * (float)((q[i] & 15) - zero) + m;
        out[i + QUANT_BLOCK / 2] = d * (float)((q[i] >> 4) - zero) + m;
    }
}

/* The same with bit i of `fifth` as the fifth bit of element i. */
static inline void quant_decode_q5(const uint8_t *q, const uint8_t *fifth, float d, int zero, float m, float *out) {
    uint32_t high;
    memcpy(&high, fifth, sizeof high);
#pragma omp simd
    for (int i = 0; i < QUANT_BLOCK / 2; i++) {
        const int low = (q[i] & 15) | (int)(high >> i & 1) << 4;
        const int upper = q[i] >> 4 | (int)(high >> (i + QUANT_BLOCK / 2) & 1) << 4;
        out[i] = d * (float)(low - zero) + m;
        out[i + QUANT_BLOCK / 2] = d * (float)(upper - zero) + m;
    }
}

/* Unpacks the 6-bit scales s and t of Q4_K and Q5_K. The first four of each are the lower bits of bytes 0-3 and 4-7;
 * the last four have their low bits in the halves of bytes 8-11, their upper bits in those of bytes 0-7. */
static inline void quant_scales_k(const uint8_t p[12], uint8_t s[8], uint8_t t[8]) {
    for (int j = 0; j < 4; j++) {
        s[j] = p[j] & 63;
        t[j] = p[j + 4] & 63;
        s[j + 4] = (uint8_t)((p[j + 8] & 15) | p[j] >> 6 << 4);
        t[j + 4] = (uint8_t)(p[j + 8] >> 4 | p[j + 4] >> 6 << 4);
    }
}

/* q: 128 bytes, of which each 32 hold two sub-blocks of 32 elements. fifth: bit j of byte i is the fifth bit of element
 * i of sub-block j; NULL: Q4_K. */
static inline void quant_decode_k(const uint8_t *b, const uint8_t *fifth, const uint8_t *q, float *out) {
    const float d = quant_scale_at(b), dmin = quant_scale_at(b + 2);
    uint8_t s[8], t[8];
    quant_scales_k(b + 4, s, t);
    for (int j = 0; j < 8; j++, out += QUANT_BLOCK) {
        const uint8_t *from = q + QUANT_BLOCK * (j / 2);
        const float scale = d * s[j], least = dmin * t[j];
        const int shift = j % 2 * 4;
        if (fifth) {
#pragma omp simd
            for (int i = 0; i < QUANT_BLOCK; i++)
                out[i] = scale * (float)((from[i] >> shift & 15) | (fifth[i] >> j & 1) << 4) - least;
        } else {
#pragma omp simd
            for (int i = 0; i < QUANT_BLOCK; i++) out[i] = scale * (float)(from[i] >> shift & 15) - least;
        }
    }
}

/* Sub-block k of half h of a block of Q6_K: low bits in half k / 2 of ql[64 h + 32 (k % 2) + i], upper bits in bits 2k
 * and 2k + 1 of qh[32 h + i]. */
static inline void quant_decode_q6_k(const uint8_t *b, float *out) {
    const uint8_t *ql = b, *qh = b + 128;
    const int8_t *scale = (const int8_t *)(b + 192);
    const float d = quant_scale_at(b + 208);
    for (int j = 0; j < 8; j++, out += QUANT_BLOCK) {
        const int h = j / 4, k = j % 4, low_shift = k / 2 * 4, high_shift = 2 * k;
        const uint8_t *low = ql + 64 * h + 32 * (k % 2), *high = qh + 32 * h;
        const float first = d * scale[2 * j], second = d * scale[2 * j + 1];
#pragma omp simd
        for (int i = 0; i < QUANT_BLOCK; i++) {
            const int q = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
            out[i] = (i < 16 ? first : second) * (float)(q - 32);
        }
    }
}

static inline void quant_decode_block(QuantType type, const uint8_t *b, float *out) {
    switch (type) {
    case QUANT_Q4_0: quant_decode_q4(b + 2, quant_scale_at(b), 8, -0.0f, out); break;
    case QUANT_Q4_1: quant_decode_q4(b + 4, quant_scale_at(b), 0, quant_scale_at(b + 2), out); break;
    case QUANT_Q5_0: quant_decode_q5(b + 6, b + 2, quant_scale_at(b), 16, -0.0f, out); break;
    case QUANT_Q5_1: quant_decode_q5(b + 8, b + 4, quant_scale_at(b), 0, quant_scale_at(b + 2), out); break;
    case QUANT_Q8_0: quant_decode_q8_0(b, out); break;
    case QUANT_Q4_K: quant_decode_k(b, NULL, b + 16, out); break;
    case QUANT_Q5_K: quant_decode_k(b, b + 16, b + 48, out); break;
    default: quant_decode_q6_k(b, out); break;
    }
}

/* Writes the values of n elements, a multiple of the elements of a block, to out[n]. The blocks need no alignment. */
static inline void quant_decode(QuantType type, const void *blocks, float *out, size_t n) {
    const uint8_t *b = (const uint8_t *)blocks;
    const QuantInfo *info = quant_info(type);
    if (type == QUANT_F32) {
        if (n) memcpy(out, b, n * sizeof *out);
    } else if (type == QUANT_F16) quant_decode_f16(b, out, n);
    else if (type == QUANT_BF16) quant_decode_bf16(b, out, n);
    else
        for (size_t i = 0; i < n; i += info->values, b += info->bytes) quant_decode_block(type, b, out + i);
}

/* ---- encoding -------------------------------------------------------------------------------------------------- */

/* 1 / d, or 0 if d is 0 or so small that 1 / d is not finite; such a d is 0 as a float16. */
static inline float quant_inverse(float d) {
    const float inverse = 1.0f / d;
    return d == 0 || !(fabsf(inverse) < INFINITY) ? 0.0f : inverse;
}

/* d = max |x| / 127; q is x / d rounded to the nearest integer, halves away from 0 (ggml-quants.c,
 * quantize_row_q8_0_ref). q is computed with the float32 d, before that is rounded to float16. */
static inline void quant_encode_q8_0(const float *x, uint8_t *b) {
    float largest = 0;
    int8_t *q = (int8_t *)(b + 2);
#pragma omp simd reduction(max : largest)
    for (int i = 0; i < QUANT_BLOCK; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    const float d = largest / 127, inverse = quant_inverse(d);
    quant_put_scale(b, d);
#pragma omp simd
    for (int i = 0; i < QUANT_BLOCK; i++) {
        const float scaled = fabsf(x[i] * inverse);
        const int whole = (int)scaled;
        const int rounded = whole + (scaled - (float)whole >= 0.5f);
        q[i] = (int8_t)(x[i] < 0 ? -rounded : rounded);
    }
}

/* d = x / -8 of the first x with the largest |x|; q = x / d + 8 rounded down after adding 1/2, at most 15 (ggml-quants.c,
 * quantize_row_q4_0_ref). */
static inline void quant_encode_q4_0(const float *x, uint8_t *b) {
    float extreme = x[0];
    uint8_t q[QUANT_BLOCK];
    for (int i = 1; i < QUANT_BLOCK; i++)
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    const float d = extreme / -8, inverse = quant_inverse(d);
    quant_put_scale(b, d);
#pragma omp simd
    for (int i = 0; i < QUANT_BLOCK; i++) {
        /* the product and the sum are rounded one after the other, as in ggml; the sum in double forbids a fused one */
        const float scaled = x[i] * inverse;
        const int whole = (int)(float)((double)scaled + 8.5);
        q[i] = (uint8_t)(whole > 15 ? 15 : whole);
    }
    for (int i = 0; i < QUANT_BLOCK / 2; i++) b[2 + i] = (uint8_t)(q[i] | q[i + QUANT_BLOCK / 2] << 4);
}

static inline void quant_encode_halves(QuantType type, const float *x, uint8_t *b, size_t n) {
    if (type == QUANT_F16) {
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            const uint16_t h = half_to_f16(x[i]);
            memcpy(b + 2 * i, &h, sizeof h);
        }
    } else {
#pragma omp simd
        for (size_t i = 0; i < n; i++) {
            const uint16_t h = half_to_bf16(x[i]);
            memcpy(b + 2 * i, &h, sizeof h);
        }
    }
}

/* Stores n finite values, a multiple of the elements of a block, as F32, F16, BF16, Q8_0 or Q4_0. */
static inline void quant_encode(QuantType type, const float *x, void *blocks, size_t n) {
    uint8_t *b = (uint8_t *)blocks;
    if (type == QUANT_F32) {
        if (n) memcpy(b, x, n * sizeof *x);
    } else if (type == QUANT_Q8_0)
        for (size_t i = 0; i < n; i += QUANT_BLOCK, b += QUANT_Q8_0_BYTES) quant_encode_q8_0(x + i, b);
    else if (type == QUANT_Q4_0)
        for (size_t i = 0; i < n; i += QUANT_BLOCK, b += QUANT_Q4_0_BYTES) quant_encode_q4_0(x + i, b);
    else quant_encode_halves(type, x, b, n);
}

/* The largest |x| that the type can hold, for a check before quant_encode(). */
static inline float quant_limit(QuantType type) {
    switch (type) {
    case QUANT_F32: return FLT_MAX;
    case QUANT_F16: return 65504.0f;
    case QUANT_Q8_0: return 127 * 65504.0f;
    case QUANT_Q4_0: return 8 * 65504.0f;
    default: return 0x1.fep127f; /* BF16 */
    }
}

#endif
