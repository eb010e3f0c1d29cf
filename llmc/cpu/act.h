/* act.h - the element type of activations: float, or bfloat16 in the backend for --dtype bf16 (cpu.c compiled with
 * CPU_HALF). CPU_PAIRS is defined where, besides, the processor multiplies pairs of bfloat16 (AVX512-BF16).
 *
 * Kernels read an element by act_get() and write it by act_set(), which rounds to nearest, ties to even. For float both
 * are the identity. Compilers vectorise loops over either. Sums and statistics are float in both.
 *
 *     for (int i = 0; i < n; i++) y[i] = act_set(act_get(x[i]) - max);
 */
#ifndef LLMC_CPU_ACT_H
#define LLMC_CPU_ACT_H

#include "../base/half.h" /* half_from_bf16, half_to_bf16 */
#include "product.h"      /* CpuVec */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef CPU_HALF
#include <immintrin.h>

#ifdef __AVX512BF16__
#define CPU_PAIRS
#endif

typedef uint16_t Act;
enum { ACT_HALF = 1 };

static inline float act_get(Act x) { return half_from_bf16(x); }
static inline Act act_set(float x) { return half_to_bf16(x); }

/* CPU_VEC elements. */
static inline CpuVec act_vector(const Act *x) {
#ifdef __AVX512F__
    const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)x);
    return (CpuVec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
    const __m128i half = _mm_loadu_si128((const __m128i *)(const void *)x);
    return (CpuVec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
#endif
}

/* Returns n elements as floats, in `buffer`. */
static inline const float *act_floats(float *restrict buffer, const Act *restrict x, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) buffer[i] = act_get(x[i]);
    return buffer;
}

/* x = n floats of `from`. */
static inline void act_store(Act *restrict x, const float *restrict from, size_t n) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) x[i] = act_set(from[i]);
}

#else

typedef float Act;
enum { ACT_HALF = 0 };

static inline float act_get(Act x) { return x; }
static inline Act act_set(float x) { return x; }
static inline CpuVec act_vector(const Act *x) { return *(const CpuVec *)x; }

/* Returns x; the buffer is not used. */
static inline const float *act_floats(float *buffer, const Act *x, size_t n) {
    (void)buffer, (void)n;
    return x;
}

#endif
#endif
