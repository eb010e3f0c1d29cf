/* tiles_activation.h - the activations of an MLP and their derivatives, for 16 floats, as parts of products in bfloat16.
 *
 *   GELU, tanh approximation   f(x) = x sigmoid(2u),  u = sqrt(2/pi) (x + 0.044715 x^3)
 *   SiLU                       f(x) = x sigmoid(x)
 *
 * The forward and the backward pass share these functions, so that both have the same bits. They exist only where tiles.h
 * has operations (CPU_TILES).
 */
#ifndef LLMC_CPU_TILES_ACTIVATION_H
#define LLMC_CPU_TILES_ACTIVATION_H

#include "../model/backend.h" /* MLP_GELU, MLP_SWIGLU, MlpKind */
#include "tiles.h"            /* TILES_INLINE, tiles_mask16, CPU_TILES, TILES_BLOCK, ... */

/* The pre-activations and activations of rows of an MLP with `hidden` activations. A row of pre and of dpre has those of
 * GELU, or gates and then values. */
typedef struct TilesActivation {
    MlpKind kind;
    int hidden;
    const uint16_t *pre; /* (rows, hidden) or (rows, 2 hidden) */
    uint16_t *act;       /* (rows, hidden) */
    uint16_t *dpre;      /* like pre; backward only */
} TilesActivation;

#ifdef CPU_TILES

/* f(x) and f'(x). */
typedef struct TilesSlope {
    __m512 value, slope;
} TilesSlope;

TILES_INLINE __m512 tiles_act_sigmoid(bool gelu, __m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    if (gelu) {
        const __m512 cubic = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(0.044715f), x), _mm512_mul_ps(x, x));
        x = _mm512_mul_ps(_mm512_set1_ps(2 * 0.7978845608028654f), _mm512_add_ps(x, cubic));
    }
    const __m512 e = tiles_exp_any(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(one, _mm512_add_ps(one, e));
}

TILES_INLINE __m512 tiles_act(bool gelu, __m512 x) { return _mm512_mul_ps(x, tiles_act_sigmoid(gelu, x)); }

/* f'(x) = s + x s (1 - s) u'(x) with s the sigmoid of u(x). */
TILES_INLINE TilesSlope tiles_act_slope(bool gelu, __m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), s = tiles_act_sigmoid(gelu, x);
    const __m512 steep = _mm512_mul_ps(s, _mm512_sub_ps(one, s));
    __m512 bend = _mm512_mul_ps(x, steep);
    if (gelu) {
        const __m512 inner = _mm512_fmadd_ps(_mm512_set1_ps(3 * 0.044715f), _mm512_mul_ps(x, x), one);
        bend = _mm512_mul_ps(bend, _mm512_mul_ps(_mm512_set1_ps(2 * 0.7978845608028654f), inner));
    }
    /* steep is 0 for large |x|, where x * x may overflow */
    const __mmask16 bent = _mm512_cmp_ps_mask(steep, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    return (TilesSlope){.value = _mm512_mul_ps(x, s), .slope = _mm512_mask_add_ps(s, bent, s, bend)};
}

/* 16 elements of bfloat16, those of the mask, as floats. */
TILES_INLINE __m512 tiles_widen(__mmask16 in, const uint16_t *from) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}

/* The lower and upper half of 32 elements of bfloat16, as floats. */
TILES_INLINE __m512 tiles_widen_low(__m512i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16));
}
TILES_INLINE __m512 tiles_widen_high(__m512i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16));
}

TILES_INLINE void tiles_narrow(uint16_t *to, __mmask16 in, __m512 x) {
    _mm256_mask_storeu_epi16(to, in, (__m256i)_mm512_cvtneps_pbh(x));
}

/* act = f(pre) of n elements. */
static inline void tiles_act_row(uint16_t *act, const uint16_t *pre, bool gelu, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 in = tiles_mask16(n - i < 16 ? (int)(n - i) : 16);
        tiles_narrow(act + i, in, tiles_act(gelu, tiles_widen(in, pre + i)));
    }
}

/* act = f(gate) value of n elements. */
static inline void tiles_gate_row(uint16_t *act, const uint16_t *gate, const uint16_t *value, bool gelu, int n) {
    for (int i = 0; i < n; i += 16) {
        const __mmask16 in = tiles_mask16(n - i);
        const __m512 f = tiles_act(gelu, tiles_widen(in, gate + i));
        tiles_narrow(act + i, in, _mm512_mul_ps(f, tiles_widen(in, value + i)));
    }
}

/* From the gradients dact of 16 activations of a row, of which those of the mask exist: dpre, and the activations again. */
TILES_INLINE void tiles_act_backward(const TilesActivation *t, int row, int column, __mmask16 in, __m512 dact) {
    const size_t F = (size_t)t->hidden, wide = t->kind == MLP_GELU ? F : 2 * F;
    const size_t at = (size_t)row * wide + (size_t)column;
    const TilesSlope s = tiles_act_slope(t->kind != MLP_SWIGLU, tiles_widen(in, t->pre + at));
    __m512 act = s.value;
    _mm_prefetch(t->pre + at + 2 * TILES_BLOCK, _MM_HINT_T1);
    if (t->kind != MLP_GELU) {
        const __m512 value = tiles_widen(in, t->pre + at + F);
        act = _mm512_mul_ps(act, value);
        tiles_narrow(t->dpre + at + F, in, _mm512_mul_ps(dact, s.value));
        dact = _mm512_mul_ps(dact, value);
    }
    tiles_narrow(t->dpre + at, in, _mm512_mul_ps(dact, s.slope));
    tiles_narrow(t->act + (size_t)row * F + (size_t)column, in, act);
}

#endif
#endif
