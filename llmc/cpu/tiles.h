/* tiles.h - packed bfloat16 operands of products, and exp and tanh of 16 floats.
 *
 * The layout is that of the processor's tiles (AMX): 16 rows of 64 bytes. AVX512-BF16 reads it as well. Operands are
 * packed in blocks of 32 x 32 bfloat16, 2 KB each, in two forms:
 *
 *   rows    a plain row-major block, as the left operand of tdpbf16ps: its upper and lower half are tiles
 *   pairs   [2 halves of the columns][16 pairs of rows][16 columns][2 rows of the pair], as the right operand
 *
 * A packed matrix of n x depth, n and depth rounded up to 32, is stored as [n / 32][depth / 32] such blocks: `strips` of
 * 32 rows of a left operand [n, depth], or `panels` of 32 columns of a right operand [depth, n]. Places past the ends are
 * 0. The same weights w [M, K] are the right operand w^T [K, M] of a forward pass and w [M, K] of a gradient; the blocks of
 * one become those of the other by tiles_turn_team().
 *
 * Sizes and tiles_available() always exist. The rest exists only where the compiler may use AMX and AVX512-BF16 (cpu.c
 * compiled for level bf16), and may run only if tiles_available(); functions of tiles only if tiles_amx().
 */
#ifndef LLMC_CPU_TILES_H
#define LLMC_CPU_TILES_H

#include <oneapi/dnnl/dnnl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined __AVX512BF16__ && (defined __AMX_BF16__ || defined __AMXBF16__) /* gcc; clang 14 */
#define CPU_TILES
#endif

enum {
    TILES_BLOCK = 32,
    TILES_BLOCK_SIZE = TILES_BLOCK * TILES_BLOCK,
    TILES_RUN = 8,   /* blocks of a row that are packed together */
    TILES_PARTS = 16 /* of the rows of a matrix, whose sums are made apart and added in this order */
};

static inline size_t tiles_blocks(int n) { return ((size_t)n + TILES_BLOCK - 1) / TILES_BLOCK; }

/* Number of bfloat16 in a packed matrix of n x depth. */
static inline size_t tiles_count(int n, int depth) { return tiles_blocks(n) * tiles_blocks(depth) * TILES_BLOCK_SIZE; }

/* Returns whether this process may use AMX: this code was compiled for it, oneDNN's limit ONEDNN_MAX_CPU_ISA includes it,
 * and the kernel grants the permission that it requires (arch_prctl(2)). */
static inline bool tiles_amx(void) {
#ifdef CPU_TILES
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18, UNKNOWN = 0, NO, YES };
    static int known; /* threads that ask at the same time find the same answer */
    int answer = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (answer == UNKNOWN) {
        const bool amx = dnnl_get_effective_cpu_isa() == dnnl_cpu_isa_avx512_core_amx &&
                         !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
        answer = amx ? YES : NO;
        __atomic_store_n(&known, answer, __ATOMIC_RELAXED);
    }
    return answer == YES;
#else
    return false;
#endif
}

/* Returns whether this code can compute products in bfloat16: by AMX or, without it, by AVX512-BF16. */
static inline bool tiles_available(void) {
#ifdef CPU_TILES
    const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    return isa == dnnl_cpu_isa_avx512_core_bf16 || isa == dnnl_cpu_isa_avx512_core_amx;
#else
    return false;
#endif
}

#ifdef CPU_TILES
#include <immintrin.h>

#define TILES_INLINE static inline __attribute__((always_inline))

/* The layout of a tile configuration (Intel SDM, LDTILECFG). */
typedef struct TilesConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
} TilesConfig;

/* Gives the calling thread eight tiles of 16 rows of 64 bytes, until _tile_release(). */
static inline void tiles_configure(void) {
    TilesConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.bytes_per_row[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("" ::"m"(config) : "memory"); /* gcc 12's intrinsic does not say that it reads memory */
    _tile_loadconfig(&config);
}

/* The mask of the first n of 16 elements. */
TILES_INLINE __mmask16 tiles_mask16(int n) { return (__mmask16)(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

/* 32 floats rounded to bfloat16, to nearest, ties to even. */
TILES_INLINE __m512i tiles_round(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

/* 16 rows of 16 dwords become columns; `to` may be `from`. Rows are read 128 bits at a time into the lanes where they
 * belong, which leaves 32 shuffles. */
TILES_INLINE void tiles_transpose_dwords(uint16_t *to, const uint16_t *from) {
    const char *f = (const char *)from;
    __m512i r[16], t[4];
    for (int c = 0; c < 4; c++)
        for (int i = 0; i < 4; i++) {
            const char *at = f + i * 64 + c * 16;
            const __m512i first = _mm512_castsi128_si512(_mm_load_si128((const __m128i *)at));
            const __m512i second = _mm512_inserti32x4(first, _mm_load_si128((const __m128i *)(at + 4 * 64)), 1);
            const __m512i third = _mm512_inserti32x4(second, _mm_load_si128((const __m128i *)(at + 8 * 64)), 2);
            r[4 * c + i] = _mm512_inserti32x4(third, _mm_load_si128((const __m128i *)(at + 12 * 64)), 3);
        }
    for (int c = 0; c < 4; c++) {
        const __m512i *x = r + 4 * c;
        __m512i *out = (__m512i *)(void *)((char *)to + c * 256);
        t[0] = _mm512_unpacklo_epi32(x[0], x[1]);
        t[1] = _mm512_unpackhi_epi32(x[0], x[1]);
        t[2] = _mm512_unpacklo_epi32(x[2], x[3]);
        t[3] = _mm512_unpackhi_epi32(x[2], x[3]);
        _mm512_store_si512(out, _mm512_unpacklo_epi64(t[0], t[2]));
        _mm512_store_si512(out + 1, _mm512_unpackhi_epi64(t[0], t[2]));
        _mm512_store_si512(out + 2, _mm512_unpacklo_epi64(t[1], t[3]));
        _mm512_store_si512(out + 3, _mm512_unpackhi_epi64(t[1], t[3]));
    }
}

/* A block in rows becomes its transpose in pairs, and the reverse: both are transpositions of pairs of elements. */
TILES_INLINE void tiles_transpose_pairs(uint16_t *to, const uint16_t *from) {
    tiles_transpose_dwords(to, from);
    tiles_transpose_dwords(to + TILES_BLOCK_SIZE / 2, from + TILES_BLOCK_SIZE / 2);
}

/* A block in rows becomes the same block in pairs. */
TILES_INLINE void tiles_interleave(uint16_t *to, const uint16_t *from) {
    const __m512i low = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
    const __m512i high = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    for (int pair = 0; pair < TILES_BLOCK / 2; pair++) {
        const __m512i x = _mm512_load_si512(from + 2 * TILES_BLOCK * pair);
        const __m512i y = _mm512_load_si512(from + 2 * TILES_BLOCK * pair + TILES_BLOCK);
        const __m512i a = _mm512_unpacklo_epi16(x, y), b = _mm512_unpackhi_epi16(x, y);
        _mm512_store_si512(to + TILES_BLOCK * pair, _mm512_permutex2var_epi64(a, low, b));
        _mm512_store_si512(to + TILES_BLOCK_SIZE / 2 + TILES_BLOCK * pair, _mm512_permutex2var_epi64(a, high, b));
    }
}

/* ---- whole matrices -------------------------------------------------------------------------------------------- */

typedef enum TilesForm {
    TILES_ROWS,            /* the blocks of x [n, depth] in rows: a left operand x */
    TILES_ROWS_TRANSPOSED, /* of x [depth, n]: a left operand x^T */
    TILES_PAIRS,           /* the blocks of x [depth, n] in pairs: a right operand x */
    TILES_PAIRS_TRANSPOSED /* of x [n, depth]: a right operand x^T */
} TilesForm;

/* Reads up to TILES_RUN blocks of 32 rows and 32 columns of x, of which `rows` and `columns` remain, into blocks in rows, one
 * after another. A row is read over all of these blocks before the next one, which the processor prefetches
 * better than short pieces of 32 rows. half: x is bfloat16; otherwise it is float and is rounded. */
TILES_INLINE void tiles_read_run(uint16_t *to, const void *x, bool half, size_t ld, int rows, int columns) {
    for (int i = 0; i < TILES_BLOCK; i++)
        for (int column = 0; column < columns && column < TILES_RUN * TILES_BLOCK; column += TILES_BLOCK) {
            const size_t at = (size_t)i * ld + (size_t)column;
            const int left = columns - column;
            __m512i row = _mm512_setzero_si512();
            if (i < rows && half) {
                const __mmask32 in = left >= TILES_BLOCK ? 0xffffffffu : (1u << left) - 1;
                row = _mm512_maskz_loadu_epi16(in, (const uint16_t *)x + at);
            } else if (i < rows)
                row = tiles_round(_mm512_maskz_loadu_ps(tiles_mask16(left), (const float *)x + at),
                                  _mm512_maskz_loadu_ps(tiles_mask16(left - 16), (const float *)x + at + 16));
            _mm512_store_si512(to + column / TILES_BLOCK * TILES_BLOCK_SIZE + i * TILES_BLOCK, row);
        }
}

/* Packs the matrix x, whose rows are ld apart, as n x depth in a form. half: x is bfloat16; otherwise it is float and is
 * rounded. Called by all threads of a team. */
static inline void tiles_pack_team(uint16_t *to, TilesForm form, const void *x, bool half, size_t ld, int n,
                                   int depth) {
    const size_t steps = tiles_blocks(depth);
    const bool across = form == TILES_ROWS_TRANSPOSED || form == TILES_PAIRS; /* x is [depth, n] */
    const int rows = across ? depth : n, columns = across ? n : depth;
    const size_t next = (across ? steps : 1) * TILES_BLOCK_SIZE; /* between the blocks of neighbouring columns */
#pragma omp for collapse(2) schedule(static)
    for (int row = 0; row < rows; row += TILES_BLOCK)
        for (int column = 0; column < columns; column += TILES_RUN * TILES_BLOCK) {
            const size_t i = (size_t)(across ? column : row) / TILES_BLOCK,
                         k = (size_t)(across ? row : column) / TILES_BLOCK;
            uint16_t *out = to + (i * steps + k) * TILES_BLOCK_SIZE;
            uint16_t run[TILES_RUN * TILES_BLOCK_SIZE] __attribute__((aligned(64)));
            const size_t at = (size_t)row * ld + (size_t)column;
            const void *from = half ? (const void *)((const uint16_t *)x + at) : (const void *)((const float *)x + at);
            const bool plain = form == TILES_ROWS;
            tiles_read_run(plain ? out : run, from, half, ld, rows - row, columns - column);
            if (plain) continue;
            for (int b = 0; b < TILES_RUN && column + b * TILES_BLOCK < columns; b++, out += next) {
                const uint16_t *block = run + b * TILES_BLOCK_SIZE;
                if (form == TILES_PAIRS) tiles_interleave(out, block);
                if (form == TILES_PAIRS_TRANSPOSED) tiles_transpose_pairs(out, block);
                if (form != TILES_ROWS_TRANSPOSED) continue;
                tiles_interleave(out, block);
                tiles_transpose_pairs(out, out);
            }
        }
}

/* Packs x [depth, n] of bfloat16 as the left operand x^T (TILES_ROWS_TRANSPOSED), and adds the sums of its columns to `sums`.
 * parts: scratch, (TILES_PARTS, n). Called by all threads of a team. */
static inline void tiles_pack_sums_team(uint16_t *to, const uint16_t *x, int n, int depth, float *parts, float *sums) {
    const int steps = (int)tiles_blocks(depth);
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80); /* 1 */
#pragma omp for collapse(2) schedule(static)
    for (int part = 0; part < TILES_PARTS; part++)
        for (int column = 0; column < n; column += TILES_RUN * TILES_BLOCK) {
            uint16_t run[TILES_RUN * TILES_BLOCK_SIZE] __attribute__((aligned(64)));
            __m512 sum[2 * TILES_RUN];
            for (int i = 0; i < 2 * TILES_RUN; i++) sum[i] = _mm512_setzero_ps();
            for (int k = part * steps / TILES_PARTS; k < (part + 1) * steps / TILES_PARTS; k++) {
                const int row = k * TILES_BLOCK;
                tiles_read_run(run, x + (size_t)row * (size_t)n + (size_t)column, true, (size_t)n, depth - row,
                               n - column);
                for (int b = 0; b < TILES_RUN && column + b * TILES_BLOCK < n; b++) {
                    uint16_t *out =
                        to + ((size_t)(column / TILES_BLOCK + b) * (size_t)steps + (size_t)k) * TILES_BLOCK_SIZE;
                    tiles_interleave(out, run + b * TILES_BLOCK_SIZE);
                    __m512 low = sum[2 * b], high = sum[2 * b + 1];
                    for (int pair = 0; pair < TILES_BLOCK / 2; pair++) {
                        const uint16_t *at = out + TILES_BLOCK * pair;
                        low = _mm512_dpbf16_ps(low, (__m512bh)_mm512_load_si512(at), ones);
                        high = _mm512_dpbf16_ps(high, (__m512bh)_mm512_load_si512(at + TILES_BLOCK_SIZE / 2), ones);
                    }
                    sum[2 * b] = low;
                    sum[2 * b + 1] = high;
                    tiles_transpose_pairs(out, out);
                }
            }
            float *partial = parts + (size_t)part * (size_t)n + (size_t)column;
            for (int i = 0; i < 2 * TILES_RUN; i++)
                _mm512_mask_storeu_ps(partial + 16 * i, tiles_mask16(n - column - 16 * i), sum[i]);
        }
#pragma omp for schedule(static)
    for (int column = 0; column < n; column++)
        for (int part = 0; part < TILES_PARTS; part++) sums[column] += parts[(size_t)part * (size_t)n + (size_t)column];
}

/* Packs the matrix x [n, depth] of floats twice, which reads it once: as the right operand x^T (TILES_PAIRS_TRANSPOSED, of n x
 * depth) and as the right operand x (TILES_PAIRS, of depth x n). Called by all threads of a team. */
static inline void tiles_pack_both_team(uint16_t *transposed, uint16_t *pairs, const float *x, int n, int depth) {
    const size_t steps = tiles_blocks(depth), strips = tiles_blocks(n);
#pragma omp for collapse(2) schedule(static)
    for (int row = 0; row < n; row += TILES_BLOCK)
        for (int column = 0; column < depth; column += TILES_RUN * TILES_BLOCK) {
            const size_t i = (size_t)row / TILES_BLOCK, k = (size_t)column / TILES_BLOCK;
            uint16_t run[TILES_RUN * TILES_BLOCK_SIZE] __attribute__((aligned(64)));
            tiles_read_run(run, x + (size_t)row * (size_t)depth + (size_t)column, false, (size_t)depth, n - row,
                           depth - column);
            for (size_t b = 0; b < TILES_RUN && k + b < steps; b++) {
                const uint16_t *block = run + b * TILES_BLOCK_SIZE;
                tiles_transpose_pairs(transposed + (i * steps + k + b) * TILES_BLOCK_SIZE, block);
                tiles_interleave(pairs + ((k + b) * strips + i) * TILES_BLOCK_SIZE, block);
            }
        }
}

/* Turns a packed matrix of n x depth into its transpose, packed as depth x n: a left operand x into x^T, or (pairs) a right
 * operand w^T into w. Called by all threads of a team. */
static inline void tiles_turn_team(uint16_t *to, const uint16_t *from, int n, int depth, bool pairs) {
    const size_t strips = tiles_blocks(n), steps = tiles_blocks(depth);
#pragma omp for collapse(2) schedule(static)
    for (size_t i = 0; i < strips; i++)
        for (size_t k = 0; k < steps; k++) {
            const uint16_t *in = from + (i * steps + k) * TILES_BLOCK_SIZE;
            uint16_t *out = to + (k * strips + i) * TILES_BLOCK_SIZE;
            uint16_t block[TILES_BLOCK_SIZE] __attribute__((aligned(64)));
            if (pairs) {
                tiles_transpose_pairs(block, in);
                tiles_interleave(out, block);
            } else {
                tiles_interleave(block, in);
                tiles_transpose_pairs(out, block);
            }
        }
}

/* ---- 16 floats ------------------------------------------------------------------------------------------------- */

/* e^r for |r| <= ln(2)/2, by the same polynomial as cpu_exp() (vector_math.h). */
TILES_INLINE __m512 tiles_exp_near(__m512 r) {
    __m512 p = _mm512_set1_ps(0x1.6a2352p-10f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.123a6cp-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5558f4p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555490p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.fffffcp-2f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
    return _mm512_add_ps(p, _mm512_set1_ps(1.0f));
}

/* e^x for x <= 0. It is 0 up to -87; NaN gives NaN. */
TILES_INLINE __m512 tiles_exp(__m512 x) {
    const __m512 rounder = _mm512_set1_ps(0x1.8p23f);
    const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLE_UQ);
    const __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(0x1.715476p+0f), rounder);
    const __m512 n = _mm512_sub_ps(shifted, rounder);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(positive, _mm512_castps_si512(tiles_exp_near(r)), exponent));
}

/* e^x for any x, as cpu_exp(): 0 below about -104, infinite above 88.73; NaN gives NaN. */
TILES_INLINE __m512 tiles_exp_any(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), _mm512_min_ps(_mm512_set1_ps(89.0f), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    return _mm512_scalef_ps(tiles_exp_near(r), n);
}

/* log x of positive normal numbers, as cpu_log(). */
TILES_INLINE __m512 tiles_log(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i exponent = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);
    const __m512 n = _mm512_cvtepi32_ps(exponent);
    const __m512 r = _mm512_sub_ps(_mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(exponent, 23))),
                                   _mm512_set1_ps(1.0f));
    __m512 p = _mm512_set1_ps(-0x1.38b4ccp-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.055b46p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(-0x1.0d8552p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.22da22p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(-0x1.547244p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.99a008p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(-0x1.000228p-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555554p-2f));
    const __m512 bend = _mm512_mul_ps(_mm512_mul_ps(r, r), _mm512_fmsub_ps(r, p, _mm512_set1_ps(0.5f)));
    const __m512 tail = _mm512_fmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), bend);
    return _mm512_fmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), _mm512_add_ps(r, tail));
}

/* tanh x, as cpu_tanh(): a polynomial below 0.625, 1 - 2 e / (1 + e) with e = e^(-2 |x|) from there on. */
TILES_INLINE __m512 tiles_tanh(__m512 x) {
    const __m512 z = _mm512_abs_ps(x), s = _mm512_mul_ps(x, x), one = _mm512_set1_ps(1.0f);
    __m512 p = _mm512_set1_ps(-0.00569738374f);
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(0.02063254604f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-0.05373779793f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(0.1333142038f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-0.3333328118f));
    const __m512 near = _mm512_fmadd_ps(x, _mm512_mul_ps(s, p), x);
    const __m512 e = tiles_exp(_mm512_mul_ps(z, _mm512_set1_ps(-2.0f)));
    const __m512 far = _mm512_sub_ps(one, _mm512_div_ps(_mm512_add_ps(e, e), _mm512_add_ps(one, e)));
    const __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int)0x80000000u));
    const __m512 signed_far = _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(far), sign));
    return _mm512_mask_mov_ps(signed_far, _mm512_cmp_ps_mask(z, _mm512_set1_ps(0.625f), _CMP_LT_OQ), near);
}

#endif
#endif
