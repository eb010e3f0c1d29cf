/* lora_pairs.h - low-rank adapters by dot products of pairs of bfloat16 (vdpbf16ps) with float32 sums, for activations in
 * bfloat16: the products of lora.h in the same blocks.
 *
 * The adapters are rounded to bfloat16 for these products, as the weights of linear layers are, and so are the scaled inner
 * activations and their gradients. The float32 adapters themselves, their gradients and the optimizer are not rounded. An
 * element's sum depends on its own operands only: a row gives the same bits in any batch and with any number of threads.
 *
 * They are used only on processors without AMX: those with AMX compute dot products of pairs at half the rate of float32.
 */
#ifndef LLMC_CPU_LORA_PAIRS_H
#define LLMC_CPU_LORA_PAIRS_H

#include "../model/backend.h" /* Lora */
#include "act.h"              /* Act, CPU_PAIRS */
#include "product.h"          /* CPU_UNROLL, CPU_MR, CPU_VEC, CPU_INLINE, ... */
#include "product_pairs.h"    /* CpuPair, cpu_pairs_set, cpu_pairs_add, cpu_pairs_of_floats, ... */
#include "tiles.h"            /* tiles_mask16, CPU_TILES, tiles_amx, tiles_round, ... */
#include "tiles_activation.h" /* tiles_narrow, tiles_widen */

enum {
    LORA_ROWS = 48,      /* rows of a block */
    LORA_STRIP = 64,     /* channels of which a thread adds all rows */
    LORA_DEPTH = 256,    /* rows at a time of these sums */
    LORA_PAIRS_UNIT = 32 /* channels are a multiple of it: 16 pairs */
};

static inline int lora_whole_vectors(int n) { return (n + 15) / 16 * 16; }

/* The most elements of 32 bits that these products need: shared by the threads, and for each of them. */
static inline size_t lora_pairs_shared_most(int rows, int all, int widest) {
    return ((size_t)rows + 1) * (size_t)all + (size_t)widest * (size_t)lora_whole_vectors(all);
}
static inline size_t lora_pairs_own_most(int all) {
    return (size_t)lora_whole_vectors(all) * (2 * LORA_ROWS + LORA_STRIP) + LORA_DEPTH / 2 * LORA_STRIP;
}

#if defined CPU_PAIRS && defined CPU_TILES
#define LORA_PAIRS

/* Whether all channels of an adapter come in whole vectors of pairs, on a processor where that pays. */
static inline bool lora_paired(const Lora *l) {
    bool whole = l->in % LORA_PAIRS_UNIT == 0 && l->rank % 2 == 0 && l->stride % 2 == 0 && !tiles_amx();
    for (int p = 0; p < l->parts; p++) whole = whole && l->count[p] % LORA_PAIRS_UNIT == 0;
    return whole;
}

/* to[k][j] = the pair x[j][2k], x[j][2k + 1] of 16 rows j of 2 * `pairs` <= 32 columns; rows of `to` are ld apart. Of the
 * 16 rows only the first `rows` exist; the others are 0. */
static inline void lora_pairs_turn(CpuPair *to, size_t ld, const float *x, size_t stride, int rows, int pairs) {
    uint16_t block[16 * LORA_PAIRS_UNIT] __attribute__((aligned(64)));
    for (int j = 0; j < 16; j++) {
        const __mmask16 low = tiles_mask16(j < rows ? 2 * pairs : 0),
                        high = tiles_mask16(j < rows ? 2 * pairs - 16 : 0);
        const float *row = x + (size_t)(j < rows ? j : 0) * stride;
        const __m512 second = high ? _mm512_maskz_loadu_ps(high, row + 16) : _mm512_setzero_ps();
        _mm512_store_si512(block + j * LORA_PAIRS_UNIT, tiles_round(_mm512_maskz_loadu_ps(low, row), second));
    }
    tiles_transpose_dwords(block, block);
    for (int k = 0; k < pairs; k++)
        _mm512_storeu_si512(to + (size_t)k * ld, _mm512_load_si512(block + k * LORA_PAIRS_UNIT));
}

/* to[k][j] as above for n rows x of `columns` columns, by the threads of a team. ld: whole vectors of at least n */
static inline void lora_pairs_turn_team(CpuPair *to, size_t ld, const float *x, int n, int columns) {
#pragma omp for collapse(2) schedule(static) nowait
    for (int j = 0; j < n; j += 16)
        for (int c = 0; c < columns; c += LORA_PAIRS_UNIT) {
            const int pairs = (columns - c < LORA_PAIRS_UNIT ? columns - c : LORA_PAIRS_UNIT) / 2;
            lora_pairs_turn(to + (size_t)(c / 2) * ld + j, ld, x + (size_t)j * (size_t)columns + c, (size_t)columns,
                            n - j < 16 ? n - j : 16, pairs);
        }
}

/* One row of pairs of n columns from two rows, of floats that are rounded; zeros follow to whole vectors. */
static inline void lora_pairs_zip(CpuPair *to, const float *first, const float *second, int n) {
    for (int j = 0; j < n; j += 16) {
        const __mmask16 in = tiles_mask16(n - j);
        const __m512i x = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(in, first + j)));
        const __m512i y = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(in, second + j)));
        _mm512_storeu_si512(to + j, _mm512_or_si512(x, _mm512_slli_epi32(y, 16)));
    }
}

/* The same from rows of bfloat16, of which the second may be NULL: zeros. Only n pairs are written. */
static inline void lora_pairs_zip_half(CpuPair *to, const Act *first, const Act *second, int n) {
    for (int j = 0; j < n; j += 16) {
        const __mmask16 in = tiles_mask16(n - j);
        const __m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, first + j));
        __m512i y = _mm512_setzero_si512();
        if (second) y = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, second + j));
        _mm512_mask_storeu_epi32(to + j, in, _mm512_or_si512(x, _mm512_slli_epi32(y, 16)));
    }
}

/* to = scale * from, rounded, of n elements. */
static inline void lora_pairs_narrow(Act *to, const float *from, int n, float scale) {
    for (int j = 0; j < n; j += 16) {
        const __mmask16 in = tiles_mask16(n - j);
        tiles_narrow(to + j, in, _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_maskz_loadu_ps(in, from + j)));
    }
}

/* C[mr, 16 nv] += A[mr, 2 depth] B[2 depth, 16 nv], with C in bfloat16, which is rounded once. */
CPU_INLINE void lora_pairs_tile(const int mr, const int nv, int depth, const CpuPair *a, size_t row, const CpuPair *b,
                                size_t ldb, Act *c, size_t ldc) {
    __m512 sum[CPU_MR][CPU_NV];
    CPU_UNROLL for (int i = 0; i < mr; i++) CPU_UNROLL for (int j = 0; j < nv; j++) sum[i][j] =
        tiles_widen(0xffff, c + (size_t)i * ldc + j * CPU_VEC);
    for (int k = 0; k < depth; k++, b += ldb) {
        __m512bh right[CPU_NV];
        CPU_UNROLL for (int j = 0; j < nv; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + j * CPU_VEC);
        CPU_UNROLL for (int i = 0; i < mr; i++) {
            const __m512bh left = (__m512bh)_mm512_set1_epi32(a[(size_t)i * row + (size_t)k]);
            CPU_UNROLL for (int j = 0; j < nv; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
        }
    }
    CPU_UNROLL for (int i = 0; i < mr; i++) CPU_UNROLL for (int j = 0; j < nv; j++)
        tiles_narrow(c + (size_t)i * ldc + j * CPU_VEC, 0xffff, sum[i][j]);
}

CPU_INLINE void lora_pairs_columns(const int nv, int m, int depth, const CpuPair *a, size_t row, const CpuPair *b,
                                   size_t ldb, Act *c, size_t ldc) {
    int i = 0;
    for (; i + CPU_MR <= m; i += CPU_MR)
        lora_pairs_tile(CPU_MR, nv, depth, a + (size_t)i * row, row, b, ldb, c + (size_t)i * ldc, ldc);
    for (; i < m; i++) lora_pairs_tile(1, nv, depth, a + (size_t)i * row, row, b, ldb, c + (size_t)i * ldc, ldc);
}

/* C[m, n] += A[m, 2 depth] B[2 depth, n] for n a multiple of 32. Row i of A begins at pair i * row. */
static inline void lora_pairs_add(int m, int n, int depth, const CpuPair *a, size_t row, const CpuPair *b, size_t ldb,
                                  Act *c, size_t ldc) {
    int j = 0;
    for (; j + 64 <= n; j += 64) lora_pairs_columns(4, m, depth, a, row, b + j, ldb, c + j, ldc);
    if (j < n) lora_pairs_columns(2, m, depth, a, row, b + j, ldb, c + j, ldc);
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

/* h and out of `rows` rows from row `first` on. at: the pairs of a's rows (in / 2, all in whole vectors); bt: those of b_p's
 * rows (rank / 2, count of p), one part after another; own: memory of the thread. */
static inline void lora_pairs_forward_rows(const Lora *l, const CpuPair *at, const CpuPair *bt, float *own, int first,
                                           int rows) {
    const int all = l->parts * l->rank, wide = lora_whole_vectors(all);
    const size_t in = (size_t)l->in, stride = (size_t)l->stride;
    const CpuPair *x = (const CpuPair *)((const Act *)l->x + (size_t)first * in);
    float *sum = own;
    Act *scaled = (Act *)(void *)(own + LORA_ROWS * wide), *h = (Act *)l->h + (size_t)first * (size_t)all;
    cpu_pairs_set(rows, wide, l->in / 2, x, in / 2, 1, at, (size_t)wide, sum, (size_t)wide);
    for (int i = 0; i < rows; i++) {
        lora_pairs_narrow(h + (size_t)i * (size_t)all, sum + (size_t)i * (size_t)wide, all, 1);
        lora_pairs_narrow(scaled + i * all, sum + (size_t)i * (size_t)wide, all, l->scale);
    }
    for (int p = 0; p < l->parts; bt += (size_t)l->count[p] * (size_t)(l->rank / 2), p++)
        lora_pairs_add(rows, l->count[p], l->rank / 2, (const CpuPair *)(scaled + p * l->rank), (size_t)(all / 2), bt,
                       (size_t)l->count[p], (Act *)l->out + (size_t)first * stride + (size_t)l->first[p], stride);
}

/* scratch: shared memory for `shared`, then `own` elements for each thread; block: rows of a thread's block. Called by all
 * threads of a team, likewise below. */
static inline void lora_pairs_forward_team(const Lora *l, float *scratch, size_t own, int block, int outputs) {
    const int N = l->rows, all = l->parts * l->rank, wide = lora_whole_vectors(all);
    CpuPair *at = (CpuPair *)(void *)scratch, *bt = at + (size_t)(l->in / 2) * (size_t)wide;
    float *buffer = scratch + (size_t)(l->in / 2) * (size_t)wide + (size_t)outputs * (size_t)(l->rank / 2) +
                    (size_t)omp_get_thread_num() * own;
    lora_pairs_turn_team(at, (size_t)wide, (const float *)l->a, all, l->in);
    const float *b = (const float *)l->b;
    for (int p = 0; p < l->parts; b += (size_t)l->count[p] * (size_t)l->rank, p++)
        lora_pairs_turn_team(bt + (b - (const float *)l->b) / 2, (size_t)l->count[p], b, l->count[p], l->rank);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int first = 0; first < N; first += block)
        lora_pairs_forward_rows(l, at, bt, buffer, first, N - first < block ? N - first : block);
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

/* Memory of the backward pass: pairs along the rows of dh and h, each (rows / 2, all); pairs along the rows of b_p (count /
 * 2, rank in whole vectors) and of a (all / 2, in). */
typedef struct LoraPairsBackward {
    CpuPair *dh, *h, *b, *a;
    float *own;
} LoraPairsBackward;

static inline LoraPairsBackward lora_pairs_backward_memory(const Lora *l, float *scratch, size_t own, int outputs) {
    const size_t all = (size_t)(l->parts * l->rank), inner = (size_t)((l->rows + 1) / 2) * all;
    LoraPairsBackward w = {.dh = (CpuPair *)(void *)scratch};
    w.h = w.dh + inner;
    w.b = w.h + inner;
    w.a = w.b + (size_t)(outputs / 2) * (size_t)lora_whole_vectors(l->rank);
    w.own = scratch + (w.a - w.dh) + all / 2 * (size_t)l->in + (size_t)omp_get_thread_num() * own;
    return w;
}

/* dh and dx of `rows` rows from row `first` on, which is even. */
static inline void lora_pairs_backward_rows(const Lora *l, const LoraPairsBackward *w, int first, int rows) {
    const int all = l->parts * l->rank, wide = lora_whole_vectors(l->rank);
    const size_t in = (size_t)l->in, stride = (size_t)l->stride;
    const CpuPair *b = w->b;
    float *sum = w->own;
    Act *dh = (Act *)(void *)(sum + LORA_ROWS * wide);
    const Act *h = (const Act *)l->h + (size_t)first * (size_t)all;
    for (int p = 0; p < l->parts; b += (size_t)(l->count[p] / 2) * (size_t)wide, p++) {
        const Act *from = (const Act *)l->dout + (size_t)first * stride + (size_t)l->first[p];
        cpu_pairs_set(rows, wide, l->count[p] / 2, (const CpuPair *)from, stride / 2, 1, b, (size_t)wide, sum,
                      (size_t)wide);
        for (int i = 0; i < rows; i++) lora_pairs_narrow(dh + i * all + p * l->rank, sum + i * wide, l->rank, l->scale);
    }
    lora_pairs_add(rows, l->in, all / 2, (const CpuPair *)dh, (size_t)(all / 2), w->a, in,
                   (Act *)l->dx + (size_t)first * in, in);
    for (int i = 0; i < rows; i += 2) {
        const size_t at = (size_t)((first + i) / 2) * (size_t)all;
        const bool two = i + 1 < rows;
        lora_pairs_zip_half(w->dh + at, dh + i * all, two ? dh + (i + 1) * all : NULL, all);
        lora_pairs_zip_half(w->h + at, h + i * all, two ? h + (i + 1) * all : NULL, all);
    }
}

/* sums[m, width] += left[N, m]^T x[N, width]: pairs of rows of left are `all` apart, rows of x `stride`, rows of sums ld */
static inline void lora_pairs_add_rows(int N, int m, int width, const CpuPair *left, int all, const Act *x,
                                       size_t stride, float *sums, size_t ld, CpuPair *buffer) {
    for (int n = 0; n < N; n += LORA_DEPTH) {
        const int rows = N - n < LORA_DEPTH ? N - n : LORA_DEPTH, pairs = (rows + 1) / 2;
        for (int k = 0; k < pairs; k++) {
            const Act *row = x + (size_t)(n + 2 * k) * stride;
            cpu_pairs_of_rows(buffer + k * width, row, 2 * k + 1 < rows ? row + stride : NULL, width);
        }
        cpu_pairs_add(m, width, pairs, left + (size_t)(n / 2) * (size_t)all, 1, (size_t)all, buffer, (size_t)width,
                      sums, ld);
    }
}

/* db of `width` channels of part p from channel j on. index: rows of b before the part */
static inline void lora_pairs_backward_b(const Lora *l, const LoraPairsBackward *w, int p, int index, int j,
                                         int width) {
    const size_t rank = (size_t)l->rank;
    float *sums = w->own + LORA_DEPTH / 2 * LORA_STRIP, *db = (float *)l->db + (size_t)(index + j) * rank;
    memset(sums, 0, rank * (size_t)width * sizeof *sums);
    lora_pairs_add_rows(l->rows, l->rank, width, w->h + p * l->rank, l->parts * l->rank,
                        (const Act *)l->dout + l->first[p] + j, (size_t)l->stride, sums, (size_t)width,
                        (CpuPair *)(void *)w->own);
    for (int c = 0; c < width; c++)
        for (size_t r = 0; r < rank; r++) db[(size_t)c * rank + r] += l->scale * sums[r * (size_t)width + (size_t)c];
}

static inline void lora_pairs_backward_team(const Lora *l, float *scratch, size_t own, int block, int outputs) {
    const int N = l->rows, all = l->parts * l->rank, wide = lora_whole_vectors(l->rank);
    const size_t in = (size_t)l->in, rank = (size_t)l->rank;
    const LoraPairsBackward w = lora_pairs_backward_memory(l, scratch, own, outputs);
    const float *a = (const float *)l->a, *b = (const float *)l->b;
#pragma omp for schedule(static) nowait
    for (int c = 0; c < outputs / 2; c++)
        lora_pairs_zip(w.b + c * wide, b + (size_t)(2 * c) * rank, b + (size_t)(2 * c + 1) * rank, l->rank);
#pragma omp for schedule(static)
    for (int k = 0; k < all / 2; k++)
        cpu_pairs_of_floats(w.a + (size_t)k * in, a + (size_t)(2 * k) * in, a + (size_t)(2 * k + 1) * in, l->in);
#pragma omp for schedule(static)
    for (int first = 0; first < N; first += block)
        lora_pairs_backward_rows(l, &w, first, N - first < block ? N - first : block);
    for (int p = 0, index = 0; p < l->parts; index += l->count[p++])
#pragma omp for schedule(static) nowait
        for (int j = 0; j < l->count[p]; j += LORA_STRIP)
            lora_pairs_backward_b(l, &w, p, index, j, l->count[p] - j < LORA_STRIP ? l->count[p] - j : LORA_STRIP);
#pragma omp for schedule(static)
    for (int k = 0; k < l->in; k += LORA_STRIP)
        lora_pairs_add_rows(N, all, l->in - k < LORA_STRIP ? l->in - k : LORA_STRIP, w.dh, all, (const Act *)l->x + k,
                            in, (float *)l->da + k, in, (CpuPair *)(void *)w.own);
}

#endif
#endif
