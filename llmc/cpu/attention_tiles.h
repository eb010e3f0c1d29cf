/* attention_tiles.h - products of blocks of attention on the processor's tiles (AMX), for heads of up to 256 channels.
 *
 * A tile of a left operand is 16 rows of 32 bfloat16; of a right operand, 16 rows of 16 pairs (CpuPair, product_pairs.h); of
 * a result, 16 x 16 floats. Blocks of keys and of lanes are stored in exactly these forms: keys and values are read where
 * they are, and only V^T and K^T, the left operands of out^T and dq^T, are copied, by cpu_tiles_transpose().
 *
 * Only where activations are bfloat16 and this code may use tiles (CPU_HEAD_TILES); cpu_head_tiles() says whether the
 * processor has them. Each thread calls cpu_tiles_begin() first, and cpu_tiles_end() at the end.
 */
#ifndef LLMC_CPU_ATTENTION_TILES_H
#define LLMC_CPU_ATTENTION_TILES_H

#include "../model/backend.h" /* Attention */
#include "act.h"              /* Act, CPU_PAIRS */
#include "attention_strip.h"  /* CPU_KEYS, CPU_LANES, CpuLanes, cpu_head_pairs */
#include "product_pairs.h"    /* CpuPair */
#include "tiles.h"            /* CPU_TILES, TILES_INLINE, tiles_amx, tiles_round, ... */
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#if defined CPU_PAIRS && defined CPU_TILES
#define CPU_HEAD_TILES

enum { CPU_TILE = 16, CPU_TILE_DEPTH = 32, CPU_TILES_HEAD = 256 };

/* Whether products are those of this file. */
static inline bool cpu_head_tiles(const Attention *a) {
    return a->head_size <= CPU_TILES_HEAD && cpu_head_pairs(a) && tiles_amx();
}

static inline int cpu_tiles_up(int n, int unit) { return (n + unit - 1) / unit * unit; }
static inline int cpu_tiles_steps(int depth) { return (depth + CPU_TILE_DEPTH - 1) / CPU_TILE_DEPTH; }

/* C[m, n] = A[m, 32 steps] B[32 steps, n], or (add) C += A B; m and n are multiples of 16. Rows of A are lda elements apart,
 * those of B ldb pairs, those of C ldc floats. Each sum adds its terms in the order of the depth. */
TILES_INLINE void cpu_tiles(const bool add, int m, int n, int steps, const Act *a, size_t lda, const CpuPair *b,
                            size_t ldb, float *c, size_t ldc) {
    const size_t a_row = lda * sizeof *a, b_row = ldb * sizeof *b, c_row = ldc * sizeof *c;
    __asm__ volatile("" ::: "memory"); /* gcc 12's intrinsics do not say that they read and write memory */
    for (int i = 0; i < m; i += 2 * CPU_TILE)
        for (int j = 0; j < n; j += 2 * CPU_TILE) {
            const bool low = i + CPU_TILE < m, right = j + CPU_TILE < n;
            float *upper = c + (size_t)i * ldc + j, *lower = upper + CPU_TILE * ldc;
            const Act *left = a + (size_t)i * lda;
            const CpuPair *pairs = b + j;
            if (add) {
                _tile_loadd(0, upper, c_row);
                if (right) _tile_loadd(1, upper + CPU_TILE, c_row);
                if (low) _tile_loadd(2, lower, c_row);
                if (low && right) _tile_loadd(3, lower + CPU_TILE, c_row);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int s = 0; s < steps; s++, left += CPU_TILE_DEPTH, pairs += CPU_TILE * ldb) {
                _tile_loadd(6, pairs, b_row);
                _tile_loadd(4, left, a_row);
                _tile_dpbf16ps(0, 4, 6);
                if (right) {
                    _tile_loadd(7, pairs + CPU_TILE, b_row);
                    _tile_dpbf16ps(1, 4, 7);
                }
                if (!low) continue;
                _tile_loadd(5, left + CPU_TILE * lda, a_row);
                _tile_dpbf16ps(2, 5, 6);
                if (right) _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, upper, c_row);
            if (right) _tile_stored(1, upper + CPU_TILE, c_row);
            if (low) _tile_stored(2, lower, c_row);
            if (low && right) _tile_stored(3, lower + CPU_TILE, c_row);
        }
    __asm__ volatile("" ::: "memory");
}

/* C[m, n] = A B; the rows of A and of C exist up to the next multiple of 16. */
static inline void cpu_tiles_set(int m, int n, int steps, const Act *a, size_t lda, const CpuPair *b, size_t ldb,
                                 float *c, size_t ldc) {
    cpu_tiles(false, cpu_tiles_up(m, CPU_TILE), n, steps, a, lda, b, ldb, c, ldc);
}

/* C[m, n] += A B; the rows of A exist up to the next multiple of 16, those of C may end at any. */
static inline void cpu_tiles_add(int m, int n, int steps, const Act *a, size_t lda, const CpuPair *b, size_t ldb,
                                 float *c, size_t ldc) {
    const int whole = m / CPU_TILE * CPU_TILE;
    cpu_tiles(true, whole, n, steps, a, lda, b, ldb, c, ldc);
    if (whole == m) return;
    float rest[CPU_TILE * CPU_TILES_HEAD] __attribute__((aligned(64)));
    cpu_tiles(false, CPU_TILE, n, steps, a + (size_t)whole * lda, lda, b, ldb, rest, CPU_TILES_HEAD);
    for (int i = whole; i < m; i++)
        for (int j = 0; j < n; j++) c[(size_t)i * ldc + j] += rest[(i - whole) * CPU_TILES_HEAD + j];
}

/* Rows of keys or values of one head as a left operand of depth D: x itself, or, if tiles would reach past the rows or past the
 * head, a copy in `buffer` that is filled up with zeros. *ld receives the distance between rows. */
static inline const Act *cpu_tiles_rows(Act *buffer, const Act *x, size_t stride, int rows, int D, size_t *ld) {
    *ld = stride;
    if (rows % CPU_TILE == 0 && D % CPU_TILE_DEPTH == 0) return x;
    const int all = cpu_tiles_up(rows, CPU_TILE), wide = cpu_tiles_up(D, CPU_TILE_DEPTH);
    *ld = wide;
    for (int i = 0; i < all; i++) {
        Act *to = buffer + (size_t)i * wide;
        const int n = i < rows ? D : 0;
        memcpy(to, x + i * stride, (size_t)n * sizeof *to);
        memset(to + n, 0, (size_t)(wide - n) * sizeof *to);
    }
    return buffer;
}

/* Zeros the rows of a right operand from `rows` on, up to a multiple of 16; rows are ld apart. */
static inline void cpu_tiles_fill(CpuPair *b, int rows, size_t ld) {
    for (int i = rows; i < cpu_tiles_up(rows, CPU_TILE); i++) memset(b + (size_t)i * ld, 0, ld * sizeof *b);
}

/* to[D, CPU_KEYS] = x[rows, D]^T: a left operand whose depth is the rows, with zeros up to a multiple of 32 of them. D: a
 * multiple of 16. Rows are read 128 bits at a time into the lanes where they belong, as in tiles_transpose_dwords(). */
static inline void cpu_tiles_transpose(Act *to, const Act *x, size_t stride, int rows, int D) {
    static const Act zeros[CPU_TILES_HEAD];
    for (int first = 0; first < rows; first += CPU_TILE_DEPTH) {
        const char *row[CPU_TILE_DEPTH];
        for (int i = 0; i < CPU_TILE_DEPTH; i++)
            row[i] = (const char *)(first + i < rows ? x + (first + i) * stride : zeros);
        for (int d = 0; d < D; d += 8) {
            __m512i pair[2][4], t[4]; /* [4 channels][pair of rows, of every fourth] */
            for (int i = 0; i < 4; i++) {
                __m512i half[2]; /* the rows 2 i and 2 i + 1, and those 8, 16 and 24 after them */
                for (int odd = 0; odd < 2; odd++) {
                    const char *const *r = row + 2 * i + odd;
                    const size_t at = (size_t)d * sizeof(Act);
                    const __m128i one = _mm_loadu_si128((const __m128i *)(const void *)(r[0] + at));
                    const __m128i two = _mm_loadu_si128((const __m128i *)(const void *)(r[8] + at));
                    const __m128i three = _mm_loadu_si128((const __m128i *)(const void *)(r[16] + at));
                    const __m128i four = _mm_loadu_si128((const __m128i *)(const void *)(r[24] + at));
                    __m512i all = _mm512_inserti32x4(_mm512_castsi128_si512(one), two, 1);
                    all = _mm512_inserti32x4(all, three, 2);
                    half[odd] = _mm512_inserti32x4(all, four, 3);
                }
                pair[0][i] = _mm512_unpacklo_epi16(half[0], half[1]);
                pair[1][i] = _mm512_unpackhi_epi16(half[0], half[1]);
            }
            for (int c = 0; c < 2; c++) {
                const __m512i *p = pair[c];
                Act *out = to + (size_t)(d + 4 * c) * CPU_KEYS + first;
                t[0] = _mm512_unpacklo_epi32(p[0], p[1]);
                t[1] = _mm512_unpackhi_epi32(p[0], p[1]);
                t[2] = _mm512_unpacklo_epi32(p[2], p[3]);
                t[3] = _mm512_unpackhi_epi32(p[2], p[3]);
                _mm512_storeu_si512(out, _mm512_unpacklo_epi64(t[0], t[2]));
                _mm512_storeu_si512(out + CPU_KEYS, _mm512_unpackhi_epi64(t[0], t[2]));
                _mm512_storeu_si512(out + 2 * CPU_KEYS, _mm512_unpacklo_epi64(t[1], t[3]));
                _mm512_storeu_si512(out + 3 * CPU_KEYS, _mm512_unpackhi_epi64(t[1], t[3]));
            }
        }
    }
}

/* Two vectors of floats, rounded, in pairs: first[i] in the lower half, second[i] in the upper half. */
TILES_INLINE __m512i cpu_tiles_pairs(__m512 first, __m512 second) {
    const __m512i both = tiles_round(first, second); /* bfloat16 i of the first is element i, of the second 16 + i */
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, both);
}

/* The lanes' rows of x = from[D, CPU_LANES] * scale[lane], like cpu_lanes_store(); D is a multiple of 16. */
static inline void cpu_tiles_store(Act *x, size_t stride, const CpuLanes *l, const float *from, int D,
                                   const float *scale) {
    Act rows[CPU_TILE * CPU_TILE_DEPTH] __attribute__((aligned(64))) = {0}; /* [16 lanes][32 channels] */
    for (int lane = 0; lane < l->count; lane += CPU_TILE) {
        const __m512 factor = _mm512_loadu_ps(scale + lane);
        const int lanes = l->count - lane < CPU_TILE ? l->count - lane : CPU_TILE;
        for (int d = 0; d < D; d += CPU_TILE_DEPTH) {
            const int n = D - d < CPU_TILE_DEPTH ? D - d : CPU_TILE_DEPTH;
            for (int i = 0; i < n; i += 2) {
                const float *at = from + (size_t)(d + i) * CPU_LANES + lane;
                const __m512 even = _mm512_mul_ps(_mm512_load_ps(at), factor);
                const __m512 odd = _mm512_mul_ps(_mm512_load_ps(at + CPU_LANES), factor);
                _mm512_store_si512(rows + i * CPU_TILE, cpu_tiles_pairs(even, odd));
            }
            tiles_transpose_dwords(rows, rows);
            for (int i = 0; i < lanes; i++) {
                Act *to = x + l->row[lane + i] * stride + (size_t)l->head[lane + i] * D + d;
                const __mmask32 in = n == CPU_TILE_DEPTH ? 0xffffffffu : 0xffffu;
                _mm512_mask_storeu_epi16(to, in, _mm512_load_si512(rows + i * CPU_TILE_DEPTH));
            }
        }
    }
}

/* The lanes of a vector that see key `key`. */
TILES_INLINE __mmask16 cpu_tiles_seen(int key, __m512i seen, __m512i from) {
    const __m512i k = _mm512_set1_epi32(key);
    return _mm512_mask_cmple_epi32_mask(_mm512_cmplt_epi32_mask(k, seen), from, k);
}

/* A thread has tiles between these two. */
static inline void cpu_tiles_begin(const Attention *a) {
    if (cpu_head_tiles(a)) tiles_configure();
}
static inline void cpu_tiles_end(const Attention *a) {
    if (cpu_head_tiles(a)) _tile_release();
}

#else
static inline bool cpu_head_tiles(const Attention *a) {
    (void)a;
    return false;
}
static inline void cpu_tiles_begin(const Attention *a) { (void)a; }
static inline void cpu_tiles_end(const Attention *a) { (void)a; }
#endif

#endif
