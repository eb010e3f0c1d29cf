/* half.h - the 16-bit floats of files, float16 (IEEE 754 binary16) and bfloat16, to and from float32.
 *
 * Reading is exact. Writing rounds to nearest, ties to even; a NaN stays one.
 *
 *     const uint16_t h = half_to_f16(0.1f);
 *     const float y = half_from_f16(h);
 */
#ifndef LLMC_BASE_HALF_H
#define LLMC_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t half_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float half_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The exponent's bias grows by 112; a subnormal number loses the implicit bit again. */
static inline float half_from_f16(uint16_t h) {
    const uint32_t shifted = (uint32_t)(h & 0x7fff) << 13, exponent = shifted & 0x0f800000u;
    const uint32_t normal = shifted + 0x38000000u;
    const uint32_t special = exponent == 0x0f800000u ? normal + 0x38000000u : normal; /* infinity or NaN */
    const uint32_t small = half_bits(half_float(normal + 0x00800000u) - 0x1p-14f);
    return half_float((uint32_t)(h & 0x8000) << 16 | (exponent ? special : small));
}

/* Values from 65520 on become infinite. A NaN becomes quiet and keeps the upper bits of its payload. */
static inline uint16_t half_to_f16(float x) {
    const uint32_t bits = half_bits(x), a = bits & 0x7fffffffu;
    const uint32_t normal = (a - 0x38000000u + 0x0fffu + (a >> 13 & 1)) >> 13;
    const uint32_t small = half_bits(half_float(a) + 0.5f) - 0x3f000000u; /* the sum rounds to a multiple of 2^-24 */
    const uint32_t special = a > 0x7f800000u ? 0x7e00u | (a >> 13 & 1023) : 0x7c00u;
    const uint32_t h = a >= 0x47800000u ? special : a < 0x38800000u ? small : normal;
    return (uint16_t)((bits >> 16 & 0x8000u) | h);
}

static inline float half_from_bf16(uint16_t h) { return half_float((uint32_t)h << 16); }

/* A NaN becomes quiet. */
static inline uint16_t half_to_bf16(float x) {
    const uint32_t bits = half_bits(x);
    const uint32_t nearest = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : nearest);
}

#endif
