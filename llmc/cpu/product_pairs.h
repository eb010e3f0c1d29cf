/* product_pairs.h - products of small bfloat16 matrices with float32 sums (vdpbf16ps), for blocks inside attention, like
 * product.h.
 *
 * An element of either operand is a pair: two neighbours along the depth, in 32 bits, the first in the lower half. Rows of
 * a row-major bfloat16 matrix are pairs along its columns as they are; cpu_pairs_of_rows() makes pairs along its rows.
 * Columns of the right operand and of the result come in whole vectors.
 *
 * Only where activations are bfloat16 and the processor has these instructions (CPU_PAIRS).
 */
#ifndef LLMC_CPU_PRODUCT_PAIRS_H
#define LLMC_CPU_PRODUCT_PAIRS_H

#include "act.h" /* Act, CPU_PAIRS */
#ifdef CPU_PAIRS
#include "product.h" /* CPU_VEC, CPU_UNROLL, CPU_INLINE, CpuProductMode, ... */
#include <immintrin.h>
#include <stdint.h>

typedef int32_t CpuPair __attribute__((may_alias, aligned(2)));

/* The same as cpu_product_tile() for pairs. */
CPU_INLINE void cpu_pairs_tile(const int mr, const int nv, const CpuProductMode mode, int depth, const CpuPair *a,
                               size_t row, size_t column, const CpuPair *b, size_t ldb, float *c, size_t ldc,
                               const float *rescale) {
    __m512 sum[CPU_MR_MAX][CPU_NV];
    CPU_UNROLL for (int i = 0; i < mr; i++) CPU_UNROLL for (int j = 0; j < nv; j++) {
        const float *at = c + i * ldc + j * CPU_VEC;
        if (mode == CPU_SET) sum[i][j] = _mm512_setzero_ps();
        if (mode == CPU_ADD) sum[i][j] = _mm512_loadu_ps(at);
        if (mode == CPU_RESCALE) sum[i][j] = _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_loadu_ps(rescale + j * CPU_VEC));
    }
    for (int k = 0; k < depth; k++, a += column, b += ldb) {
        __m512bh right[CPU_NV];
        CPU_UNROLL for (int j = 0; j < nv; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + j * CPU_VEC);
        CPU_UNROLL for (int i = 0; i < mr; i++) {
            const __m512bh left = (__m512bh)_mm512_set1_epi32(a[i * row]);
            CPU_UNROLL for (int j = 0; j < nv; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
        }
    }
    CPU_UNROLL for (int i = 0; i < mr; i++) CPU_UNROLL for (int j = 0; j < nv; j++)
        _mm512_storeu_ps(c + i * ldc + j * CPU_VEC, sum[i][j]);
}

CPU_INLINE void cpu_pairs_rows(const int nv, const CpuProductMode mode, int m, int depth, const CpuPair *a, size_t row,
                               size_t column, const CpuPair *b, size_t ldb, float *c, size_t ldc,
                               const float *rescale) {
    const int mr = nv <= 2 ? CPU_MR_MAX : CPU_MR;
    int i = 0;
    for (; i + mr <= m; i += mr)
        cpu_pairs_tile(mr, nv, mode, depth, a + i * row, row, column, b, ldb, c + i * ldc, ldc, rescale);
    for (; i + 4 <= m; i += 4)
        cpu_pairs_tile(4, nv, mode, depth, a + i * row, row, column, b, ldb, c + i * ldc, ldc, rescale);
    for (; i < m; i++) cpu_pairs_tile(1, nv, mode, depth, a + i * row, row, column, b, ldb, c + i * ldc, ldc, rescale);
}

/* C[m, n] = A[m, 2 depth] B[2 depth, n], added to C or to C rescale[j] by the mode. Pair (i, k) of A is a[i * row + k *
 * column]; rows of B and C are ldb and ldc apart. n: a multiple of CPU_VEC. */
CPU_INLINE void cpu_pairs(const CpuProductMode mode, int m, int n, int depth, const CpuPair *a, size_t row,
                          size_t column, const CpuPair *b, size_t ldb, float *c, size_t ldc, const float *rescale) {
    int j = 0;
#define CPU_COLUMNS(nv)                                                                                                \
    cpu_pairs_rows(nv, mode, m, depth, a, row, column, b + j, ldb, c + j, ldc, rescale ? rescale + j : NULL)
    for (; j + 4 * CPU_VEC <= n; j += 4 * CPU_VEC) CPU_COLUMNS(4);
    const int left = (n - j) / CPU_VEC;
    if (left == 1) CPU_COLUMNS(1);
    if (left == 2) CPU_COLUMNS(2);
    if (left == 3) CPU_COLUMNS(3);
#undef CPU_COLUMNS
}

static inline void cpu_pairs_set(int m, int n, int depth, const CpuPair *a, size_t row, size_t column, const CpuPair *b,
                                 size_t ldb, float *c, size_t ldc) {
    cpu_pairs(CPU_SET, m, n, depth, a, row, column, b, ldb, c, ldc, NULL);
}

static inline void cpu_pairs_add(int m, int n, int depth, const CpuPair *a, size_t row, size_t column, const CpuPair *b,
                                 size_t ldb, float *c, size_t ldc) {
    cpu_pairs(CPU_ADD, m, n, depth, a, row, column, b, ldb, c, ldc, NULL);
}

static inline void cpu_pairs_rescale(int m, int n, int depth, const CpuPair *a, size_t row, size_t column,
                                     const CpuPair *b, size_t ldb, float *c, size_t ldc, const float *rescale) {
    cpu_pairs(CPU_RESCALE, m, n, depth, a, row, column, b, ldb, c, ldc, rescale);
}

/* One row of pairs of n columns, a multiple of CPU_VEC, from two rows; the second may be NULL: zeros. */
CPU_INLINE void cpu_pairs_of_rows(CpuPair *to, const Act *first, const Act *second, int n) {
    for (int j = 0; j < n; j += CPU_VEC) {
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(first + j)));
        __m512i high = _mm512_setzero_si512();
        if (second) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(second + j)));
        _mm512_storeu_si512(to + j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

/* The same from two rows of floats, which are rounded. */
CPU_INLINE void cpu_pairs_of_floats(CpuPair *to, const float *first, const float *second, int n) {
    for (int j = 0; j < n; j += CPU_VEC) {
        const __m512 low = _mm512_loadu_ps(first + j),
                     high = second ? _mm512_loadu_ps(second + j) : _mm512_setzero_ps();
        const __m512i x = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
        const __m512i y = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
        _mm512_storeu_si512(to + j, _mm512_or_si512(x, _mm512_slli_epi32(y, 16)));
    }
}

/* Rounds n floats, a multiple of CPU_VEC. */
CPU_INLINE void cpu_pairs_round(Act *to, const float *from, int n) {
    for (int j = 0; j < n; j += CPU_VEC)
        _mm256_storeu_si256((__m256i *)(void *)(to + j), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + j)));
}

#endif
#endif
