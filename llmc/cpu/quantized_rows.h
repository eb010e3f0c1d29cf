/* quantized_rows.h - products of few rows with quantised matrices, as in decode, and fast decoding of their blocks.
 *
 * Decode reads every weight once and multiplies it with each of a few rows, so it should take no longer than reading the
 * blocks. Four rows of the matrix (output channels) are multiplied at a time; a thread has whole groups of four:
 *
 *   up to QUANT_FUSED rows of x   a block is decoded in registers, and its values are multiplied from there
 *   up to QUANT_FEW rows of x     QUANT_PIECE elements of the four channels are decoded into a buffer, which stays in the
 *                                 first cache, and multiplied with tiles of up to QUANT_TILE rows of x
 *
 * The values are those of quant_decode(): a scale times an integer, which is exact in float32, minus or plus a least
 * value, which is rounded once. Products and sums are float32 (fused multiply-adds); element k of x is part of sum k % width
 * of a vector, and the sums of a vector are added pairwise. So a result does not depend on the number of threads.
 *
 * F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K have code for AVX-512 and for AVX2; the first three, which have no blocks,
 * are read in pieces of 32 elements. With AVX-512 a 4-bit integer selects one of the 16 values that its block can have, which
 * are computed once per block. The other types, and other processors, decode by quant_decode() and are multiplied from the
 * buffer.
 *
 *     const QuantMatrix matrix = {.parts = 1, .type = {QUANT_Q4_0}, .rows = {768}};        // and its blocks
 *     quant_few_rows(NULL, NULL, &matrix, NULL, 8, 0, 0);
 */
#ifndef LLMC_CPU_QUANTIZED_ROWS_H
#define LLMC_CPU_QUANTIZED_ROWS_H

#include "../model/backend.h"   /* QuantType, QUANT_Q4_K, QUANT_Q4_0, QUANT_Q4_1, ... */
#include "../model/quantized.h" /* quant_bytes, quant_half_at, QUANT_BLOCK, QUANT_SUPER, ... */
#include "gemm.h"               /* cpu_worth */
#include "product.h"            /* CpuVec, CPU_INLINE, CPU_VEC, CPU_UNROLL, ... */

#if defined __AVX2__ && defined __F16C__
#include <immintrin.h>
#define QUANT_VECTORS /* there is code for this processor */
#endif

enum { QUANT_FEW = 32, QUANT_CHANNELS = 4, QUANT_PIECE = 256, QUANT_SUB = 32 };
#ifdef __AVX512F__
enum { QUANT_FUSED = 4, QUANT_TILE = 6 };
#else
enum { QUANT_FUSED = 2, QUANT_TILE = 3 };
#endif

/* ---- decoding in registers ------------------------------------------------------------------------------------- */

#ifdef QUANT_VECTORS
enum { QUANT_SIXTEEN = 16 / CPU_VEC, QUANT_UNIT_MAX = 4 * QUANT_SIXTEEN }; /* vectors of 16, and of 64 elements */

/* The scales of sub-blocks of Q4_K (8 of each) and Q6_K (16) as floats. */
typedef struct QuantScales {
    float scale[16], least[8];
} QuantScales;

CPU_INLINE CpuVec quant_all(float x) { return (CpuVec){0} + x; }

/* A vector of the float16 at p. */
CPU_INLINE CpuVec quant_all_f16(const uint8_t *p) {
    const short half = (short)quant_half_at(p);
#ifdef __AVX512F__
    return (CpuVec)_mm512_cvtph_ps(_mm256_set1_epi16(half));
#else
    return (CpuVec)_mm256_cvtph_ps(_mm_set1_epi16(half));
#endif
}

CPU_INLINE __m128i quant_load(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }

/* w[QUANT_SIXTEEN] = the 16 signed bytes of q. */
CPU_INLINE void quant_floats(__m128i q, CpuVec *w) {
#ifdef __AVX512F__
    w[0] = (CpuVec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q));
#else
    w[0] = (CpuVec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
    w[1] = (CpuVec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(q, q)));
#endif
}

/* low[QUANT_SIXTEEN] = a q + m of the low halves q of the 16 bytes at p, and high = b q + n of the high halves. */
CPU_INLINE void quant_four_bits(const uint8_t *p, CpuVec a, CpuVec m, CpuVec b, CpuVec n, CpuVec *low, CpuVec *high) {
#ifdef __AVX512F__
    const CpuVec q = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512i bytes = _mm512_cvtepu8_epi32(quant_load(p)); /* a selection heeds the lowest four bits alone */
    low[0] = (CpuVec)_mm512_permutexvar_ps(bytes, (__m512)(a * q + m));
    high[0] = (CpuVec)_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), (__m512)(b * q + n));
#else
    const __m128i bytes = quant_load(p), mask = _mm_set1_epi8(15);
    quant_floats(_mm_and_si128(bytes, mask), low);
    quant_floats(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), high);
    for (int i = 0; i < QUANT_SIXTEEN; i++) {
        low[i] = a * low[i] + m;
        high[i] = b * high[i] + n;
    }
#endif
}

/* Scales and least values of a block of Q4_K: the bytes that quant_scales_k() unpacks, four at a time. */
CPU_INLINE void quant_scales_q4_k(const uint8_t *b, QuantScales *to) {
    uint32_t p[3];
    memcpy(p, b + 4, sizeof p);
    const uint64_t s = (p[0] & 0x3F3F3F3Fu) | (uint64_t)((p[2] & 0x0F0F0F0Fu) | (p[0] >> 2 & 0x30303030u)) << 32;
    const uint64_t t = (p[1] & 0x3F3F3F3Fu) | (uint64_t)((p[2] >> 4 & 0x0F0F0F0Fu) | (p[1] >> 2 & 0x30303030u)) << 32;
    const __m128i both = _mm_set_epi64x((long long)t, (long long)s);
    const __m256 d = _mm256_cvtph_ps(_mm_set1_epi16((short)quant_half_at(b)));
    const __m256 dmin = _mm256_cvtph_ps(_mm_set1_epi16((short)quant_half_at(b + 2)));
    _mm256_storeu_ps(to->scale, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(both))));
    _mm256_storeu_ps(to->least,
                     _mm256_mul_ps(dmin, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(both, both)))));
}

/* Sub-block j of a block of Q6_K: 6-bit integers minus 32 (see quant_decode_q6_k()). */
CPU_INLINE void quant_unit_q6_k(const uint8_t *b, int j, const QuantScales *s, CpuVec *w) {
    const int h = j / 4, k = j % 4;
    const __m128i low_shift = _mm_cvtsi32_si128(k / 2 * 4), high_shift = _mm_cvtsi32_si128(2 * k);
    for (int i = 0; i < 2; i++, w += QUANT_SIXTEEN) {
        const __m128i low = _mm_srl_epi16(quant_load(b + 64 * h + 32 * (k % 2) + 16 * i), low_shift);
        const __m128i high = _mm_srl_epi16(quant_load(b + 128 + 32 * h + 16 * i), high_shift);
        const __m128i q = _mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)),
                                       _mm_slli_epi16(_mm_and_si128(high, _mm_set1_epi8(3)), 4));
        quant_floats(_mm_sub_epi8(q, _mm_set1_epi8(32)), w);
        for (int v = 0; v < QUANT_SIXTEEN; v++) w[v] *= s->scale[2 * j + i];
    }
}

/* w[2 * QUANT_SIXTEEN] = the 32 floats at p, which are stored in 16 or in 32 bits. */
CPU_INLINE void quant_unit_floats(QuantType type, const uint8_t *p, CpuVec *w) {
    for (int v = 0; v < 2 * QUANT_SIXTEEN; v++) {
        const uint8_t *at = p + 2 * CPU_VEC * v;
#ifdef __AVX512F__
        const __m256i half = _mm256_loadu_si256((const __m256i *)at);
        if (type == QUANT_F16) w[v] = (CpuVec)_mm512_cvtph_ps(half);
        else w[v] = (CpuVec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
        const __m128i half = quant_load(at);
        if (type == QUANT_F16) w[v] = (CpuVec)_mm256_cvtph_ps(half);
        else w[v] = (CpuVec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
#endif
        if (type == QUANT_F32) memcpy(&w[v], p + 4 * CPU_VEC * v, sizeof w[v]);
    }
}

/* Whether there is code for rows of K elements of the type. */
CPU_INLINE bool quant_has_code(QuantType type, int K) {
    switch (type) {
    case QUANT_F32:
    case QUANT_F16:
    case QUANT_BF16: return K % QUANT_SUB == 0;
    case QUANT_Q8_0:
    case QUANT_Q4_0:
    case QUANT_Q4_1:
    case QUANT_Q4_K:
    case QUANT_Q6_K: return true;
    default: return false;
    }
}

/* Elements whose units have quant_unit_scales() in common. */
CPU_INLINE int quant_unit_block(QuantType type) { return type >= QUANT_Q4_K ? QUANT_SUPER : QUANT_BLOCK; }

/* Elements that quant_unit() decodes in a call: a whole block, or two sub-blocks of Q4_K, or one of Q6_K. */
CPU_INLINE int quant_unit_elements(QuantType type) { return type == QUANT_Q4_K ? 2 * QUANT_SUB : QUANT_SUB; }

/* Reads what the units of block b have in common. */
CPU_INLINE void quant_unit_scales(QuantType type, const uint8_t *b, QuantScales *s) {
    if (type == QUANT_Q4_K) quant_scales_q4_k(b, s);
    if (type != QUANT_Q6_K) return;
    CpuVec scale[QUANT_SIXTEEN];
    quant_floats(quant_load(b + 192), scale);
    for (int v = 0; v < QUANT_SIXTEEN; v++) *(CpuVec *)(s->scale + v * CPU_VEC) = scale[v] * quant_all_f16(b + 208);
}

/* Decodes unit u of block b into w[QUANT_UNIT_MAX] or fewer vectors. */
CPU_INLINE void quant_unit(QuantType type, const uint8_t *b, int u, const QuantScales *s, CpuVec *w) {
    CpuVec *const second = w + QUANT_SIXTEEN;
    if (type <= QUANT_BF16) quant_unit_floats(type, b, w);
    else if (type == QUANT_Q8_0) {
        const CpuVec d = quant_all_f16(b);
        quant_floats(quant_load(b + 2), w);
        quant_floats(quant_load(b + 18), second);
        for (int v = 0; v < 2 * QUANT_SIXTEEN; v++) w[v] *= d;
    } else if (type == QUANT_Q4_0) {
        const CpuVec d = quant_all_f16(b), least = -8 * d;
        quant_four_bits(b + 2, d, least, d, least, w, second);
    } else if (type == QUANT_Q4_1) {
        const CpuVec d = quant_all_f16(b), least = quant_all_f16(b + 2);
        quant_four_bits(b + 4, d, least, d, least, w, second);
    } else if (type == QUANT_Q4_K) {
        const CpuVec d = quant_all(s->scale[2 * u]), least = quant_all(-s->least[2 * u]);
        const CpuVec e = quant_all(s->scale[2 * u + 1]), other = quant_all(-s->least[2 * u + 1]);
        const uint8_t *q = b + 16 + QUANT_SUB * u;
        quant_four_bits(q, d, least, e, other, w, w + 2 * QUANT_SIXTEEN);
        quant_four_bits(q + 16, d, least, e, other, second, w + 3 * QUANT_SIXTEEN);
    } else quant_unit_q6_k(b, u, s, w);
}

/* quant_decode() of a type with blocks for which quant_has_code(). */
CPU_INLINE void quant_decode_units(const QuantType type, const uint8_t *b, float *out, int n) {
    const int elements = quant_unit_elements(type), values = quant_unit_block(type);
    const size_t bytes = quant_bytes(type, (size_t)values);
    for (int i = 0; i < n; i += values, b += bytes) {
        QuantScales s;
        quant_unit_scales(type, b, &s);
        for (int u = 0; u < values / elements; u++, out += elements) {
            CpuVec w[QUANT_UNIT_MAX];
            quant_unit(type, b, u, &s, w);
            for (int v = 0; v < elements / CPU_VEC; v++) *(CpuVec *)(out + v * CPU_VEC) = w[v];
        }
    }
}
#endif

/* quant_decode() with vectors: the same values (of zeros, perhaps with another sign). */
static inline void quant_decode_fast(QuantType type, const uint8_t *b, float *out, int n) {
    switch (type) {
#ifdef QUANT_VECTORS
    case QUANT_Q8_0: quant_decode_units(QUANT_Q8_0, b, out, n); break;
    case QUANT_Q4_0: quant_decode_units(QUANT_Q4_0, b, out, n); break;
    case QUANT_Q4_1: quant_decode_units(QUANT_Q4_1, b, out, n); break;
    case QUANT_Q4_K: quant_decode_units(QUANT_Q4_K, b, out, n); break;
    case QUANT_Q6_K: quant_decode_units(QUANT_Q6_K, b, out, n); break;
#endif
    default: quant_decode(type, b, out, (size_t)n);
    }
}

/* Keeps a vector in a register: gcc would read it from memory again for each of its uses. */
#if defined __GNUC__ && defined __x86_64__
#define CPU_KEEP(vector) __asm__("" : "+v"(vector))
#else
#define CPU_KEEP(vector) (void)(vector)
#endif

/* ---- products -------------------------------------------------------------------------------------------------- */

/* Four channels of the matrix, of the same part: where each begins. `count` of them are computed; the others are the
 * last one again. */
typedef struct QuantGroup {
    QuantType type;
    const uint8_t *row[QUANT_CHANNELS];
    int first, count; /* channels first .. first + count - 1 */
} QuantGroup;

static inline int quant_groups(const QuantMatrix *w) {
    int groups = 0;
    for (int part = 0; part < w->parts; part++) groups += (w->rows[part] + QUANT_CHANNELS - 1) / QUANT_CHANNELS;
    return groups;
}

/* The group with this number. K: elements of a row. */
static inline QuantGroup quant_group(const QuantMatrix *w, int number, int K) {
    QuantGroup g = {.count = QUANT_CHANNELS};
    int part = 0;
    for (int groups; number >= (groups = (w->rows[part] + QUANT_CHANNELS - 1) / QUANT_CHANNELS); number -= groups)
        g.first += w->rows[part++];
    const int row = number * QUANT_CHANNELS, left = w->rows[part] - row;
    if (left < QUANT_CHANNELS) g.count = left;
    g.first += row;
    g.type = (QuantType)w->type[part];
    for (int c = 0; c < QUANT_CHANNELS; c++) {
        const size_t at = (size_t)(row + (c < g.count ? c : g.count - 1)) * (size_t)K;
        g.row[c] = (const uint8_t *)w->blocks[part] + quant_bytes(g.type, at);
    }
    return g;
}

/* The sums of four vectors. */
CPU_INLINE CpuQuad quant_totals(const CpuVec sum[QUANT_CHANNELS]) {
    CpuQuad quad[QUANT_CHANNELS];
    for (int c = 0; c < QUANT_CHANNELS; c++) {
        CpuQuad part[CPU_VEC / 4];
        memcpy(part, &sum[c], sizeof part);
        for (int width = CPU_VEC / 8; width; width /= 2)
            for (int i = 0; i < width; i++) part[i] += part[i + width];
        quad[c] = part[0];
    }
    cpu_transpose4(quad, quad);
    return (quad[0] + quad[1]) + (quad[2] + quad[3]);
}

/* Asks the second cache for the memory that begins QUANT_AHEAD bytes after `at`. The groups of a thread follow one another in
 * memory: with `at` advancing through the bytes of a group as fast as its four rows are read, every line is asked for once and
 * in order. The processor does not recognise four streams of short rows by itself, and reads them at less than half of the
 * memory's bandwidth. Beyond the matrix a request does nothing. */
enum { QUANT_AHEAD = 16384, QUANT_LINE = 64 };
CPU_INLINE void quant_prefetch(const uint8_t *at, size_t bytes) {
    const uintptr_t first = ((uintptr_t)at + QUANT_AHEAD + QUANT_LINE - 1) / QUANT_LINE * QUANT_LINE;
    for (uintptr_t line = first; line < (uintptr_t)at + QUANT_AHEAD + bytes; line += QUANT_LINE)
        __builtin_prefetch((const void *)line, 0, 2);
}

/* Writes a row of the group's results. tail: further terms, or NULL. */
CPU_INLINE void quant_store(const QuantGroup *g, const CpuVec sum[QUANT_CHANNELS], const float *tail, const float *b,
                            float *out) {
    const CpuQuad total = quant_totals(sum);
    for (int c = 0; c < g->count; c++) out[g->first + c] = total[c] + (tail ? tail[c] : 0) + (b ? b[g->first + c] : 0);
}

#ifdef QUANT_VECTORS
/* A group of a type and a K for which quant_has_code(), with m rows of x, decoded in registers. */
CPU_INLINE void quant_fused(const QuantType type, const int m, const QuantGroup *g, const float *x, const float *b,
                            int K, float *out, size_t OC) {
    const int elements = quant_unit_elements(type), values = quant_unit_block(type);
    const size_t bytes = quant_bytes(type, (size_t)values);
    CpuVec sum[QUANT_FUSED][QUANT_CHANNELS];
    for (int i = 0; i < m; i++)
        for (int c = 0; c < QUANT_CHANNELS; c++) sum[i][c] = (CpuVec){0};
    size_t at = 0;
    for (int k = 0; k < K; at += bytes) {
        QuantScales s[QUANT_CHANNELS];
        quant_prefetch(g->row[0] + QUANT_CHANNELS * at, QUANT_CHANNELS * bytes);
        for (int c = 0; c < QUANT_CHANNELS; c++) quant_unit_scales(type, g->row[c] + at, &s[c]);
        for (int u = 0; u < values / elements; u++, k += elements) {
            CPU_UNROLL for (int c = 0; c < QUANT_CHANNELS; c++) {
                CpuVec w[QUANT_UNIT_MAX];
                quant_unit(type, g->row[c] + at, u, &s[c], w);
                CPU_UNROLL for (int v = 0; v < elements / CPU_VEC; v++) CPU_UNROLL for (int i = 0; i < m; i++) {
                    sum[i][c] += *(const CpuVec *)(x + (size_t)i * (size_t)K + k + v * CPU_VEC) * w[v];
                }
            }
        }
    }
    for (int i = 0; i < m; i++) quant_store(g, sum[i], NULL, b, out + (size_t)i * OC);
}

/* The same for m up to QUANT_FUSED. */
CPU_INLINE void quant_fused_rows(const QuantType type, int m, const QuantGroup *g, const float *x, const float *b,
                                 int K, float *out, size_t OC) {
    switch (m) {
#define QUANT_CASE(r)                                                                                                  \
    case r: quant_fused(type, r, g, x, b, K, out, OC); break;
        QUANT_CASE(1)
        QUANT_CASE(2)
#ifdef __AVX512F__
        QUANT_CASE(3)
        QUANT_CASE(4)
#endif
#undef QUANT_CASE
    }
}
#endif

/* sum[i][c] += x[i] . w[c] for m rows of x, which are ld apart, and n elements, whole vectors, of four channels. */
CPU_INLINE void quant_tile(const int m, const float *x, size_t ld, const float (*w)[QUANT_PIECE], int n,
                           CpuVec (*to)[QUANT_CHANNELS]) {
    CpuVec sum[QUANT_TILE][QUANT_CHANNELS];
    CPU_UNROLL for (int i = 0; i < m; i++) CPU_UNROLL for (int c = 0; c < QUANT_CHANNELS; c++) sum[i][c] = to[i][c];
    for (int j = 0; j < n; j += CPU_VEC) {
        CpuVec left[QUANT_TILE];
        CPU_UNROLL for (int i = 0; i < m; i++) {
            left[i] = *(const CpuVec *)(x + (size_t)i * ld + j);
            CPU_KEEP(left[i]);
        }
        CPU_UNROLL for (int c = 0; c < QUANT_CHANNELS; c++) {
            CpuVec right = *(const CpuVec *)(w[c] + j);
            CPU_KEEP(right);
            CPU_UNROLL for (int i = 0; i < m; i++) sum[i][c] += left[i] * right;
        }
    }
    CPU_UNROLL for (int i = 0; i < m; i++) CPU_UNROLL for (int c = 0; c < QUANT_CHANNELS; c++) to[i][c] = sum[i][c];
}

static inline void quant_tiles(int m, const float *x, size_t ld, const float (*w)[QUANT_PIECE], int n,
                               CpuVec (*sum)[QUANT_CHANNELS]) {
    const int tiles = (m + QUANT_TILE - 1) / QUANT_TILE; /* of nearly equal numbers of rows */
    for (int t = 0, i = 0; t < tiles; t++) {
        const int rows = (m - i + tiles - t - 1) / (tiles - t);
        switch (rows) {
#define QUANT_CASE(r)                                                                                                  \
    case r: quant_tile(r, x + (size_t)i * ld, ld, w, n, sum + i); break;
            QUANT_CASE(1)
            QUANT_CASE(2)
            QUANT_CASE(3)
#ifdef __AVX512F__
            QUANT_CASE(4)
            QUANT_CASE(5)
            QUANT_CASE(6)
#endif
#undef QUANT_CASE
        }
        i += rows;
    }
}

/* A group of any type with up to QUANT_FEW rows of x. */
static inline void quant_buffered(int m, const QuantGroup *g, const float *x, const float *b, int K, float *out,
                                  size_t OC) {
    float w[QUANT_CHANNELS][QUANT_PIECE] __attribute__((aligned(64)));
    CpuVec sum[QUANT_FEW][QUANT_CHANNELS] __attribute__((aligned(64)));
    float tail[QUANT_FEW][QUANT_CHANNELS] = {{0}};
    memset(sum, 0, (size_t)m * sizeof *sum);
    for (int k = 0; k < K; k += QUANT_PIECE) {
        const int n = K - k < QUANT_PIECE ? K - k : QUANT_PIECE, whole = n / CPU_VEC * CPU_VEC;
        const size_t at = quant_bytes(g->type, (size_t)k);
        quant_prefetch(g->row[0] + QUANT_CHANNELS * at, QUANT_CHANNELS * quant_bytes(g->type, (size_t)n));
        for (int c = 0; c < QUANT_CHANNELS; c++) quant_decode_fast(g->type, g->row[c] + at, w[c], n);
        quant_tiles(m, x + k, (size_t)K, w, whole, sum);
        for (int i = 0; i < m; i++) /* elements after the last whole vector, which only types without blocks have */
            for (int j = whole; j < n; j++)
                for (int c = 0; c < QUANT_CHANNELS; c++)
                    tail[i][c] += x[(size_t)i * (size_t)K + (size_t)(k + j)] * w[c][j];
    }
    for (int i = 0; i < m; i++) quant_store(g, sum[i], tail[i], b, out + (size_t)i * OC);
}

/* out[N,OC] = x[N,K] w[OC,K]^T + b for N up to QUANT_FEW; b may be NULL. */
static inline void quant_few_rows(float *out, const float *x, const QuantMatrix *w, const float *b, int N, int K,
                                  int OC) {
    const int groups = quant_groups(w);
    const bool worth = cpu_worth((size_t)K * (size_t)OC);
#pragma omp parallel for schedule(static) if (worth)
    for (int number = 0; number < groups; number++) {
        const QuantGroup g = quant_group(w, number, K);
#ifdef QUANT_VECTORS
        if (N <= QUANT_FUSED && quant_has_code(g.type, K)) {
            switch (g.type) {
#define QUANT_CASE(type)                                                                                               \
    case type: quant_fused_rows(type, N, &g, x, b, K, out, (size_t)OC); break;
                QUANT_CASE(QUANT_F32)
                QUANT_CASE(QUANT_F16)
                QUANT_CASE(QUANT_BF16)
                QUANT_CASE(QUANT_Q8_0)
                QUANT_CASE(QUANT_Q4_0)
                QUANT_CASE(QUANT_Q4_1)
                QUANT_CASE(QUANT_Q4_K)
            default: quant_fused_rows(QUANT_Q6_K, N, &g, x, b, K, out, (size_t)OC); break;
#undef QUANT_CASE
            }
            continue;
        }
#endif
        quant_buffered(N, &g, x, b, K, out, (size_t)OC);
    }
}

#endif
