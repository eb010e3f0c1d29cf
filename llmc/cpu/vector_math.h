/* vector_math.h - exp, log, tanh and the maximum as straight-line arithmetic that compilers vectorise.
 *
 * libm's expf is a function call, which prevents vectorisation of a loop. The functions here have no branch, table or
 * call, so gcc and clang vectorise `#pragma omp simd` loops over them (-fopt-info-vec, -Rpass=loop-vectorize). They
 * need neither -ffast-math nor any of its parts: NaN gives NaN, overflow gives infinity, and underflow is gradual down
 * to 0. Maximum errors over all floats, measured by tests/test_attention.c: exp and log 1 ulp, tanh 2 ulp.
 *
 *     #pragma omp simd
 *     for (int i = 0; i < n; i++) y[i] = cpu_exp(x[i] - max);
 */
#ifndef LLMC_CPU_VECTOR_MATH_H
#define LLMC_CPU_VECTOR_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t cpu_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float cpu_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* e^x. x = n ln 2 + r with |r| <= ln(2)/2, e^x = 2^n e^r (Cody and Waite 1980); e^r = 1 + r + r^2 P(r) with P the
 * minimax polynomial of degree 4 (relative error of e^r 2^-28.3). Below -104 the result is 0, above 88.73 inf. */
static inline float cpu_exp(float x) {
    const float rounder = 0x1.8p23f; /* adding it puts the nearest integer in the low bits of the mantissa */
    x = x > 89.0f ? 89.0f : x;       /* makes 2^n a product of two normal numbers; keeps NaN */
    x = x < -104.0f ? -104.0f : x;
    const float shifted = x * 0x1.715476p+0f + rounder, n = shifted - rounder;
    const float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f; /* ln 2 in two parts; n times the first is exact */
    float p = 0x1.6a2352p-10f;
    p = p * r + 0x1.123a6cp-7f;
    p = p * r + 0x1.5558f4p-5f;
    p = p * r + 0x1.555490p-3f;
    p = p * r + 0x1.fffffcp-2f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    const int32_t exponent = (int32_t)(cpu_bits(shifted) - cpu_bits(rounder)), half = exponent >> 1;
    const float scale1 = cpu_from_bits((uint32_t)(half + 127) << 23);
    const float scale2 = cpu_from_bits((uint32_t)(exponent - half + 127) << 23);
    return p * scale1 * scale2;
}

/* log x of a positive normal number; NaN and infinity give NaN. x = 2^n (1 + r) with 1 + r in [sqrt(1/2), sqrt(2)), and
 * log(1 + r) = r - r^2/2 + r^3 P(r) with P the minimax polynomial of degree 7 (relative error of the sum 2^-27.3). */
static inline float cpu_log(float x) {
    const uint32_t bits = cpu_bits(x);
    const int32_t exponent = (int32_t)(bits - 0x3f3504f3u) >> 23;
    const float n = (float)exponent, r = cpu_from_bits(bits - ((uint32_t)exponent << 23)) - 1.0f;
    float p = -0x1.38b4ccp-4f;
    p = p * r + 0x1.055b46p-3f;
    p = p * r + -0x1.0d8552p-3f;
    p = p * r + 0x1.22da22p-3f;
    p = p * r + -0x1.547244p-3f;
    p = p * r + 0x1.99a008p-3f;
    p = p * r + -0x1.000228p-2f;
    p = p * r + 0x1.555554p-2f;
    const float tail = r * r * (r * p - 0.5f) + n * 0x1.7f7d1cp-20f;
    return n * 0x1.62e4p-1f + (r + tail) + (x - x);
}

/* tanh x = sign(x) tanh z, z = |x|. Below 0.625, tanh z = z + z^3 P(z^2) (minimax, relative error 2^-27.7); from 0.625
 * on, tanh z = 1 - 2 / (e^{2z} + 1). */
static inline float cpu_tanh(float x) {
    const uint32_t sign = cpu_bits(x) & 0x80000000u;
    const float z = cpu_from_bits(cpu_bits(x) ^ sign), s = z * z;
    float p = -0.00569738374f;
    p = p * s + 0.02063254604f;
    p = p * s + -0.05373779793f;
    p = p * s + 0.1333142038f;
    p = p * s + -0.3333328118f;
    const float near = z + z * (s * p), far = 1.0f - 2.0f / (cpu_exp(2.0f * z) + 1.0f);
    return cpu_from_bits(cpu_bits(z < 0.625f ? near : far) | sign); /* if x is NaN, so is `far` */
}

/* The largest of n numbers, ignoring NaN; -inf if there are none. Computed in lanes, a power of two of them, because clang does
 * not vectorise a maximum reduction unless NaN is ruled out. */
static inline __attribute__((always_inline)) float cpu_max(const int lanes, const float *z, int n) {
    float lane[32];
    int i = 0;
    for (int k = 0; k < lanes; k++) lane[k] = -INFINITY;
    for (; i + lanes <= n; i += lanes)
        for (int k = 0; k < lanes; k++) lane[k] = z[i + k] > lane[k] ? z[i + k] : lane[k];
    for (int k = 0; i < n; i++, k++) lane[k] = z[i] > lane[k] ? z[i] : lane[k];
    for (int half = lanes / 2; half; half /= 2)
        for (int k = 0; k < half; k++) lane[k] = lane[k + half] > lane[k] ? lane[k + half] : lane[k];
    return lane[0];
}

/* x = cap tanh(x / cap) for n numbers: the soft cap of Gemma 2's scores and logits. */
static inline void cpu_cap(float *x, int n, float cap) {
    const float inverse = 1.0f / cap;
#pragma omp simd
    for (int i = 0; i < n; i++) x[i] = cap * cpu_tanh(x[i] * inverse);
}

#endif
