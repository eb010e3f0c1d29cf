/* attention_forward.h - the forward pass of attention: outputs and the log of each softmax's denominator.
 *
 * Implements attention_forward of backend.h, for training and for decode. Softmax is computed online over blocks of
 * keys: a running maximum and denominator for each lane, and outputs that are rescaled when the maximum grows (Milakov
 * and Gimelshein 2018; FlashAttention: Dao et al. 2022, alg. 1).
 *
 * If a segment has very few lanes (one in decode), its own keys are processed differently: as dot products along the
 * channels, which run at the speed of memory. The choice depends on the segment alone.
 *
 * Threads take tasks, which are ranges of a strip's key heads, from a common counter.
 */
#ifndef LLMC_CPU_ATTENTION_FORWARD_H
#define LLMC_CPU_ATTENTION_FORWARD_H

#include "../model/backend.h" /* Attention, Device */
#include "../model/batch.h"   /* Segment */
#include "act.h"              /* Act, act_get, CPU_PAIRS, act_floats, ... */
#include "attention_strip.h"  /* CPU_KEYS, CPU_LANES, CPU_STRIP, CpuLanes, ... */
#include "attention_tiles.h"  /* CPU_HEAD_TILES, cpu_head_tiles, cpu_tiles_begin, cpu_tiles_set, ... */
#include "product.h"          /* CPU_VEC, CpuVec, CPU_UNROLL, CpuQuad, ... */
#include "product_pairs.h"    /* CpuPair, cpu_pairs_rescale, cpu_pairs_set */
#include "tiles.h"            /* TILES_INLINE, tiles_exp, tiles_tanh */
#include "vector_math.h"      /* cpu_exp, cpu_cap, cpu_max */
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

typedef struct CpuForward {
    CpuLanes lanes;
    float m[CPU_LANES], sum[CPU_LANES], alpha[CPU_LANES]; /* running maximum and denominator; last rescaling factor */
    float q[CPU_STRIP] __attribute__((aligned(64)));      /* scaled, (D, LANES) */
    float out[CPU_STRIP] __attribute__((aligned(64)));    /* not yet divided by the denominator, (D, LANES) */
    float s[CPU_KEYS * CPU_LANES] __attribute__((aligned(64))); /* scores, then probabilities, (KEYS, LANES) */
    float rows[CPU_HALF_KEYS] __attribute__((aligned(64)));     /* a block of keys, then of values, if converted */
#ifdef CPU_PAIRS
    CpuPair q_pairs[CPU_STRIP / 2] __attribute__((aligned(64)));            /* not scaled, (D / 2, LANES) */
    CpuPair p_pairs[CPU_KEYS * CPU_LANES / 2] __attribute__((aligned(64))); /* probabilities, (KEYS / 2, LANES) */
#endif
#ifdef CPU_HEAD_TILES
    float weighted[2][CPU_TILES_HEAD * CPU_TILE]
        __attribute__((aligned(64))); /* the values of a block, (D, 16 lanes) */
#endif
} CpuForward;

/* Multiplies the scores of a block by `scale` and converts them to probabilities relative to the new maximum, for lanes
 * first .. last-1:
 *   m' = max(m, max_k s),  alpha = e^(m - m'),  p = e^(s - m'),  sum = alpha sum + sum_k p */
static inline void cpu_softmax_block(CpuForward *f, const CpuBlock *b, float scale, float cap, size_t ld) {
    for (int at = b->first; at < b->last; at += CPU_VEC) {
        float next[CPU_VEC], total[CPU_VEC];
        const int *seen = f->lanes.seen + at, *from = f->lanes.from + at;
        for (int i = 0; i < CPU_VEC; i++) next[i] = f->m[at + i];
        for (int k = 0; k < b->keys; k++) {
            float *s = f->s + k * ld + at;
            if (scale != 1)
                for (int i = 0; i < CPU_VEC; i++) s[i] *= scale;
            if (cap > 0) cpu_cap(s, CPU_VEC, cap);
            if (b->masked) {
                const int key = b->key + k;
#pragma omp simd
                for (int i = 0; i < CPU_VEC; i++) s[i] = key < seen[i] && key >= from[i] ? s[i] : -INFINITY;
            }
#pragma omp simd
            for (int i = 0; i < CPU_VEC; i++) next[i] = next[i] > s[i] ? next[i] : s[i];
        }
#pragma omp simd
        for (int i = 0; i < CPU_VEC; i++) {
            f->alpha[at + i] = cpu_exp(f->m[at + i] - next[i]);
            total[i] = f->sum[at + i] * f->alpha[at + i];
        }
        for (int k = 0; k < b->keys; k++) {
            float *s = f->s + k * ld + at;
#pragma omp simd
            for (int i = 0; i < CPU_VEC; i++) {
                s[i] = cpu_exp(s[i] - next[i]);
                total[i] += s[i];
            }
        }
        for (int i = 0; i < CPU_VEC; i++) {
            f->m[at + i] = next[i];
            f->sum[at + i] = total[i];
        }
    }
}

#ifdef CPU_HEAD_TILES
/* The same for tiles and the lanes of one vector, from `at` on. The probabilities are rounded to f->p_pairs, with zeros up to a
 * multiple of 32 keys. */
TILES_INLINE void cpu_softmax_tiles(CpuForward *f, const CpuBlock *b, int at, float scale, float cap) {
    const __m512 low = _mm512_set1_ps(-INFINITY);
    const bool scaled = cap > 0 || scale <= 0; /* scores are scaled before their maximum is known */
    const __m512 factor = _mm512_set1_ps(scaled ? 1.0f : scale);
    const size_t ld = CPU_LANES;
    float *s = f->s + at;
    CpuPair *pairs = f->p_pairs + at;
    if (scaled || b->masked) {
        const __m512i seen = _mm512_loadu_si512(f->lanes.seen + at), from = _mm512_loadu_si512(f->lanes.from + at);
        for (int k = 0; k < b->keys; k++) {
            __m512 x = _mm512_load_ps(s + k * ld);
            if (scaled) x = _mm512_mul_ps(x, _mm512_set1_ps(scale));
            if (cap > 0)
                x = _mm512_mul_ps(_mm512_set1_ps(cap), tiles_tanh(_mm512_mul_ps(x, _mm512_set1_ps(1.0f / cap))));
            _mm512_store_ps(s + k * ld, _mm512_mask_mov_ps(low, cpu_tiles_seen(b->key + k, seen, from), x));
        }
    }
    const int even = b->keys / 2 * 2;
    __m512 most = low, other = low; /* of every second key */
    for (int k = 0; k < even; k += 2) {
        most = _mm512_max_ps(_mm512_load_ps(s + k * ld), most);
        other = _mm512_max_ps(_mm512_load_ps(s + (k + 1) * ld), other);
    }
    if (even < b->keys) most = _mm512_max_ps(_mm512_load_ps(s + even * ld), most);
    const __m512 m = _mm512_loadu_ps(f->m + at);
    const __m512 next = _mm512_max_ps(_mm512_mul_ps(_mm512_max_ps(most, other), factor), m);
    const __m512 alpha = tiles_exp(_mm512_sub_ps(m, next));
    __m512 total = _mm512_mul_ps(_mm512_loadu_ps(f->sum + at), alpha), rest = _mm512_setzero_ps();
    int k = 0;
    for (; k < b->keys; k += 2, pairs += ld) {
        const __m512 p = tiles_exp(_mm512_fmsub_ps(_mm512_load_ps(s + k * ld), factor, next));
        __m512 q = _mm512_setzero_ps();
        if (k < even) q = tiles_exp(_mm512_fmsub_ps(_mm512_load_ps(s + (k + 1) * ld), factor, next));
        total = _mm512_add_ps(total, p);
        rest = _mm512_add_ps(rest, q);
        _mm512_store_si512(pairs, cpu_tiles_pairs(p, q));
    }
    for (; k % CPU_TILE_DEPTH; k += 2, pairs += ld) _mm512_store_si512(pairs, _mm512_setzero_si512());
    _mm512_storeu_ps(f->alpha + at, alpha);
    _mm512_storeu_ps(f->m + at, next);
    _mm512_storeu_ps(f->sum + at, _mm512_add_ps(total, rest));
}

/* One block of keys and values, for the lanes of b, 16 at a time. The tiles compute the scores of the next lanes and the weighted
 * values of the last ones during the softmax, which does not need them. */
static inline void cpu_attend_tiles(CpuForward *f, const Attention *a, const CpuBlock *b, const Act *k, const Act *v) {
    const int D = a->head_size, steps = cpu_tiles_steps(D), depth = cpu_tiles_steps(b->keys);
    const size_t ld = CPU_LANES, stride = a->kv_stride;
    Act *copy = (Act *)(void *)f->rows, *values = copy + CPU_KEYS * CPU_TILES_HEAD;
    size_t row;
    const Act *keys = cpu_tiles_rows(copy, k + b->key * stride, stride, b->keys, D, &row);
    cpu_tiles_set(b->keys, CPU_TILE, steps, keys, row, f->q_pairs + b->first, ld, f->s + b->first, ld);
    cpu_tiles_transpose(values, v + b->key * stride, stride, b->keys, D);
    for (int at = b->first, turn = 0; at < b->last + CPU_TILE; at += CPU_TILE, turn ^= 1) {
        const int next = at + CPU_TILE, before = at - CPU_TILE;
        if (next < b->last) cpu_tiles_set(b->keys, CPU_TILE, steps, keys, row, f->q_pairs + next, ld, f->s + next, ld);
        if (at < b->last) {
            cpu_softmax_tiles(f, b, at, a->scale, a->cap);
            cpu_tiles_set(D, CPU_TILE, depth, values, CPU_KEYS, f->p_pairs + at, ld, f->weighted[turn], CPU_TILE);
        }
        if (before < b->first) continue;
        const __m512 alpha = _mm512_loadu_ps(f->alpha + before);
        const float *more = f->weighted[turn ^ 1];
        for (int d = 0; d < D; d++) {
            float *out = f->out + d * ld + before;
            _mm512_store_ps(out, _mm512_fmadd_ps(_mm512_load_ps(out), alpha, _mm512_load_ps(more + d * CPU_TILE)));
        }
    }
}
#endif

/* Prefetches D elements at x into the second-level cache. A head's part of a row is short and the rows are far apart, so
 * the hardware prefetcher detects no stream. Saves a quarter to a half of the time of decode. */
static inline void cpu_prefetch(const Act *x, int D) {
    for (int d = 0; d < D; d += 64 / (int)sizeof *x) __builtin_prefetch(x + d, 0, 2);
}

/* Lanes lane0 .. lane1-1 attend to the first `keys` rows of k and v, masked by lanes.seen. */
static inline void cpu_attend(CpuForward *f, const Attention *a, const Act *k, const Act *v, int keys, int lane0,
                              int lane1) {
    const int D = a->head_size;
    const size_t ld = cpu_lanes_max(D), stride = a->kv_stride;
    size_t row;
    for (CpuBlock b = {0}; cpu_block_next(&b, &f->lanes, lane0, lane1, keys);) {
        const int n = b.last - b.first;
        if (f->lanes.count <= CPU_VEC) /* little work per key: memory is the bottleneck */
            for (int i = b.key; i < b.key + b.keys; i++) {
                cpu_prefetch(v + i * stride, D);
                if (i + b.keys < keys) cpu_prefetch(k + (i + b.keys) * stride, D);
            }
#ifdef CPU_HEAD_TILES
        if (cpu_head_tiles(a)) {
            cpu_attend_tiles(f, a, &b, k, v);
            continue;
        }
#endif
#ifdef CPU_PAIRS
        if (cpu_head_pairs(a)) {
            cpu_pairs_set(b.keys, n, D / 2, (const CpuPair *)(k + b.key * stride), stride / 2, 1, f->q_pairs + b.first,
                          ld, f->s + b.first, ld);
            cpu_softmax_block(f, &b, a->scale, a->cap, ld);
            cpu_block_pairs(f->p_pairs, f->s, ld, b.keys, b.first, b.last);
            cpu_head_row_pairs((CpuPair *)f->rows, v + b.key * stride, stride, b.keys, D);
            cpu_pairs_rescale(D, n, (b.keys + 1) / 2, (const CpuPair *)f->rows, 1, D, f->p_pairs + b.first, ld,
                              f->out + b.first, ld, f->alpha + b.first);
            continue;
        }
#endif
        const float *block = cpu_head_rows(f->rows, k + b.key * stride, stride, b.keys, D, &row);
        cpu_product_set(b.keys, n, D, block, row, 1, f->q + b.first, ld, f->s + b.first, ld);
        cpu_softmax_block(f, &b, 1, a->cap, ld);
        block = cpu_head_rows(f->rows, v + b.key * stride, stride, b.keys, D, &row);
        cpu_product_rescale(D, n, b.keys, block, 1, row, f->s + b.first, ld, f->out + b.first, ld, f->alpha + b.first);
    }
}

/* On the path for few lanes, up to CPU_GROUP query heads of one key head are computed together, so that a key and a value are
 * loaded once for all of them. */
enum { CPU_GROUP_MAX = 4, CPU_GROUP = CPU_VEC == 16 ? CPU_GROUP_MAX : 2 }; /* AVX2 has registers for the sums of two */

/* s[h][i] = scale q_h . k_i for `heads` heads, whose queries are D apart, and 4 keys that are `stride` apart. Only the first
 * `keys` of these exist; the others get the score of the last one. Rows of s are CPU_KEYS long. */
CPU_INLINE void cpu_dots4(const int heads, float *s, const float *q, const Act *k, size_t stride, int keys, int D,
                          float scale) {
    CpuVec sum[CPU_GROUP_MAX][4] = {{{0}}};
    const Act *key[4];
    int d = 0;
    for (int i = 0; i < 4; i++) key[i] = k + (size_t)(i < keys ? i : keys - 1) * stride;
    for (; d + CPU_VEC <= D; d += CPU_VEC) {
        CPU_UNROLL for (int i = 0; i < 4; i++) {
            const CpuVec x = act_vector(key[i] + d);
            CPU_UNROLL for (int h = 0; h < heads; h++) {
                const CpuVec *from = (const CpuVec *)(q + (size_t)h * D + d);
                sum[h][i] = sum[h][i] + *from * x;
            }
        }
    }
    CPU_UNROLL for (int h = 0; h < heads; h++) {
        CpuQuad part[4];
        CPU_UNROLL for (int i = 0; i < 4; i++) {
            CpuQuad quad[CPU_VEC / 4];
            memcpy(quad, &sum[h][i], sizeof quad);
            for (int step = CPU_VEC / 8; step; step /= 2)
                for (int j = 0; j < step; j++) quad[j] += quad[j + step];
            part[i] = quad[0];
        }
        cpu_transpose4(part, part);
        CpuQuad total = (part[0] + part[1]) + (part[2] + part[3]);
        for (int e = d; e < D; e++)
            for (int i = 0; i < 4; i++) total[i] += q[(size_t)h * D + e] * act_get(key[i][e]);
        *(CpuQuad *)(s + h * CPU_KEYS) = total * scale;
    }
}

/* out_h += sum_i s[h][i] v_i for `heads` heads, whose outputs are D apart, and 4 values that are `stride` apart. Rows of s are
 * CPU_KEYS long. */
CPU_INLINE void cpu_values4(const int heads, float *out, const float *s, const Act *v, size_t stride, int D) {
    int d = 0;
    for (; d + CPU_VEC <= D; d += CPU_VEC) {
        CpuVec x[4];
        CPU_UNROLL for (int i = 0; i < 4; i++) x[i] = act_vector(v + i * stride + d);
        CPU_UNROLL for (int h = 0; h < heads; h++) {
            const float *p = s + h * CPU_KEYS;
            CpuVec *o = (CpuVec *)(out + (size_t)h * D + d);
            *o = *o + ((x[0] * p[0] + x[1] * p[1]) + (x[2] * p[2] + x[3] * p[3]));
        }
    }
    for (; d < D; d++)
        for (int h = 0; h < heads; h++) {
            const float *p = s + h * CPU_KEYS;
            out[(size_t)h * D + d] += (p[0] * act_get(v[d]) + p[1] * act_get(v[stride + d])) +
                                      (p[2] * act_get(v[2 * stride + d]) + p[3] * act_get(v[3 * stride + d]));
        }
}

/* Number of heads from h on, before h1, that are computed together. */
static inline int cpu_group(int h, int h1, int shared) {
    const int left = shared - h % shared, most = left < h1 - h ? left : h1 - h;
    return most < CPU_GROUP ? most : CPU_GROUP;
}

#define CPU_FOR_GROUP(heads, function, ...)                                                                            \
    switch (heads) {                                                                                                   \
    case 1: function(1, __VA_ARGS__); break;                                                                           \
    case 2: function(2, __VA_ARGS__); break;                                                                           \
    case 3: function(3, __VA_ARGS__); break;                                                                           \
    case 4: function(4, __VA_ARGS__); break;                                                                           \
    }

/* The same softmax for heads h0 .. h1-1 of one query row over `keys` keys, along the channels: rows of k and v are read
 * from end to end, which is the fastest order for memory. On entry the row of `out` holds the weighted values of the
 * prefix, not yet divided by the denominator, with m and sum per head; on return it holds the result. A window leaves
 * out the first keys: the row's own key is the last of the `keys`. Meanwhile the
 * first next_keys rows of k from next_start on are prefetched for the next query row. */
static inline void cpu_attend_row(const Attention *a, int row, int h0, int h1, size_t key_start, int keys, float *m,
                                  float *sum, size_t next_start, int next_keys) {
    const int seen_from = a->window && keys > a->window ? keys - a->window : 0, start = seen_from / CPU_KEYS * CPU_KEYS;
    const int D = a->head_size, shared = cpu_heads_shared(a), from = h0 / shared * D, end = (h1 - 1) / shared * D + D;
    const size_t stride = a->kv_stride;
    const Act *next_k = (const Act *)a->k + next_start * stride + from;
    const Act *k = (const Act *)a->k + key_start * stride, *v = (const Act *)a->v + key_start * stride;
    float p[CPU_LANES][CPU_KEYS];
#ifdef CPU_HALF
    float held_q[CPU_STRIP], held_out[CPU_STRIP];
    const size_t part = (size_t)h0 * D, count = (size_t)(h1 - h0) * D;
    const float *q = act_floats(held_q, (const Act *)a->q + (size_t)row * a->q_stride + part, count) - part;
    Act *row_out = (Act *)a->out + (size_t)row * a->heads * D;
    act_floats(held_out, row_out + part, count);
    float *out = held_out - part;
    assert(count <= CPU_STRIP);
#else
    const float *q = (const float *)a->q + (size_t)row * a->q_stride;
    float *out = (float *)a->out + (size_t)row * a->heads * D;
#endif
    k += start * stride;
    v += start * stride;
    for (int key = start; key < keys; key += CPU_KEYS, k += CPU_KEYS * stride, v += CPU_KEYS * stride) {
        const int n = keys - key < CPU_KEYS ? keys - key : CPU_KEYS;
        for (int i = 0; i < n; i += 4)
            for (int h = h0, heads; h < h1; h += heads) {
                const Act *from = k + i * stride + (size_t)(h / shared) * D;
                heads = cpu_group(h, h1, shared);
                for (int j = i; j < i + 4 && j < n; j++) {
                    cpu_prefetch(v + j * stride + (size_t)(h / shared) * D, D);
                    if (key + j + CPU_AHEAD < keys) cpu_prefetch(from + (j - i + CPU_AHEAD) * stride, D);
                }
                CPU_FOR_GROUP(heads, cpu_dots4, p[h - h0] + i, q + (size_t)h * D, from, stride, n - i, D, a->scale)
            }
        for (int h = h0; h < h1; h++) {
            float *s = p[h - h0], next = m[h - h0], total = 0;
            if (a->cap > 0) cpu_cap(s, n, a->cap);
            for (int i = 0; key + i < seen_from; i++) s[i] = -INFINITY;
            const float most = cpu_max(16, s, n);
            next = next > most ? next : most;
#pragma omp simd reduction(+ : total)
            for (int i = 0; i < n; i++) {
                s[i] = cpu_exp(s[i] - next);
                total += s[i];
            }
            const float alpha = cpu_exp(m[h - h0] - next);
            for (int d = 0; d < D; d++) out[(size_t)h * D + d] *= alpha;
            sum[h - h0] = sum[h - h0] * alpha + total;
            m[h - h0] = next;
        }
        for (int i = 0; i < n; i += i + 4 <= n ? 4 : 1) {
            if (key + n == keys)
                for (int j = i; j < (i + 4 <= n ? i + 4 : i + 1) && j < next_keys; j++)
                    cpu_prefetch(next_k + j * stride, end - from);
            for (int h = h0, heads; h < h1; h += heads) {
                const Act *x = v + i * stride + (size_t)(h / shared) * D;
                const float *s = p[h - h0] + i;
                float *o = out + (size_t)h * D;
                heads = cpu_group(h, h1, shared);
                if (i + 4 <= n) CPU_FOR_GROUP(heads, cpu_values4, o, s, x, stride, D)
                else
                    for (int g = 0; g < heads; g++)
#pragma omp simd
                        for (int d = 0; d < D; d++) o[(size_t)g * D + d] += s[g * CPU_KEYS] * act_get(x[d]);
            }
        }
    }
    for (int h = h0; h < h1; h++) {
        for (int d = 0; d < D; d++) out[(size_t)h * D + d] *= 1.0f / sum[h - h0];
        if (a->lse) ((float *)a->lse)[(size_t)row * a->heads + h] = m[h - h0] + logf(sum[h - h0]);
    }
#ifdef CPU_HALF
    act_store(row_out + part, held_out, count);
#endif
}

/* Attends to a strip's prefix and, for pieces with many lanes, to their own keys, for the query heads of f->lanes,
 * which begin at h0 and share a key head. Finished lanes are stored to `out` divided by the denominator. Pieces with
 * few lanes are stored undivided, for cpu_attend_row(). */
static inline void cpu_attend_lanes(CpuForward *f, const Attention *a, int prefix_start, int prefix, int h0) {
    CpuLanes *l = &f->lanes;
    const Segment *segment = cpu_segments(a);
    const int D = a->head_size;
    const size_t ld = cpu_lanes_max(D), stride = a->kv_stride, from = (size_t)(h0 / cpu_heads_shared(a)) * D;
    const Act *k = (const Act *)a->k + from, *v = (const Act *)a->v + from;
    float scale[CPU_LANES], *lse = (float *)a->lse;
    for (int lane = 0; lane < l->padded; lane++) {
        f->m[lane] = -3e38f;
        f->sum[lane] = 0;
        scale[lane] = 1;
    }
#ifdef CPU_PAIRS
    if (cpu_head_pairs(a)) cpu_lanes_load_pairs(f->q_pairs, ld, l, (const Act *)a->q, a->q_stride, D);
    else
#endif
        cpu_lanes_load(f->q, ld, l, (const Act *)a->q, a->q_stride, D, a->scale);
#ifdef CPU_HEAD_TILES
    if (cpu_head_tiles(a)) cpu_tiles_fill(f->q_pairs, D / 2, ld);
#endif
    for (int d = 0; d < D; d++) memset(f->out + d * ld, 0, l->padded * sizeof(float));
    cpu_lanes_prefix(l, a, prefix);
    cpu_attend(f, a, k + prefix_start * stride, v + prefix_start * stride, prefix, 0, l->count);
    for (int i = 0; i < l->pieces; i++) {
        const CpuPiece own = l->piece[i];
        const size_t start = segment[own.segment].key_start * stride;
        if (own.few) continue;
        cpu_lanes_own(l, a, own, prefix);
        cpu_attend(f, a, k + start, v + start, l->own[own.last - 1], own.first, own.last);
        for (int lane = own.first; lane < own.last; lane++) {
            scale[lane] = 1.0f / f->sum[lane];
            if (lse) lse[(size_t)l->row[lane] * a->heads + l->head[lane]] = f->m[lane] + logf(f->sum[lane]);
        }
    }
#ifdef CPU_HEAD_TILES
    if (cpu_head_tiles(a)) return cpu_tiles_store((Act *)a->out, (size_t)a->heads * D, l, f->out, D, scale);
#endif
    cpu_lanes_store((Act *)a->out, (size_t)a->heads * D, l, f->out, ld, D, scale);
}

/* Parts u0 .. u1-1 of a strip (see CpuPart): first everything processed by lanes, then the rows with few lanes. */
static inline void cpu_attention_forward_strip(const Attention *a, const CpuStrip *p, int u0, int u1) {
    CpuForward f;
    CpuLanes *l = &f.lanes;
    const Segment *segment = cpu_segments(a);
    const int prefix = segment[p->s0].prefix_len, first = cpu_part(a, u0).h0;
    float m[CPU_LANES][CPU_LANES], sum[CPU_LANES][CPU_LANES]; /* for rows with few lanes: row of the strip, head */
    for (int u = u0; u < u1; u++) {
        const CpuPart part = cpu_part(a, u);
        cpu_lanes_fill(l, a, p, part);
        const bool many = prefix > 0 || !l->piece[0].few;
        if (many) cpu_attend_lanes(&f, a, segment[p->s0].prefix_start, prefix, part.h0);
        for (int lane = 0, row = 0; lane < l->count; row++)
            for (int h = part.h0 - first; h < part.h1 - first; h++, lane++) {
                m[row][h] = many ? f.m[lane] : -3e38f;
                sum[row][h] = many ? f.sum[lane] : 0;
            }
    }
    const int end = cpu_part(a, u1 - 1).h1, heads = cpu_heads_strip(a);
    for (int i = 0; i < l->pieces; i++) {
        if (!l->piece[i].few) continue;
        for (int lane = l->piece[i].first; lane < l->piece[i].last; lane += heads) {
            if (prefix <= 0)
                memset((Act *)a->out + ((size_t)l->row[lane] * a->heads + first) * a->head_size, 0,
                       (size_t)(end - first) * a->head_size * sizeof(Act));
            const bool again = lane + heads < l->piece[i].last, more = i + 1 < l->pieces && l->piece[i + 1].few;
            cpu_attend_row(a, l->row[lane], first, end, segment[l->piece[i].segment].key_start, l->own[lane],
                           m[lane / heads], sum[lane / heads],
                           again || !more ? 0 : segment[l->piece[i + 1].segment].key_start,
                           again || !more ? 0 : l->own[l->piece[i + 1].first]);
        }
    }
}

/* Computes out and lse of every row; see Attention in backend.h. */
static inline void cpu_attention_forward(Device *device, const Attention *a) {
    (void)device;
    assert(a->head_size <= CPU_HEAD_MAX && a->heads % a->kv_heads == 0);
    cpu_zero_outside(a, a->out, sizeof(Act), (size_t)a->heads * a->head_size, (size_t)a->heads * a->head_size);
    if (a->lse) cpu_zero_outside(a, a->lse, sizeof(float), a->heads, a->heads);
    const int parts = cpu_parts(a);
    int64_t tickets = 0;
#pragma omp parallel if (cpu_attention_pairs(a) > CPU_PAIRS_THREADED)
    {
        /* A task is a range of parts of a strip. Each thread advances through the strips to the task that its ticket
         * names. */
        cpu_tiles_begin(a);
        CpuStrips w = cpu_strips(a, 0, a->segments);
        int64_t passed = 0, ticket;
        for (bool more = cpu_strips_next(&w); more;) {
#pragma omp atomic capture
            ticket = tickets++;
            int tasks = cpu_strip_tasks(a, &w.at);
            while (more && ticket >= passed + tasks) {
                passed += tasks;
                more = cpu_strips_next(&w);
                if (more) tasks = cpu_strip_tasks(a, &w.at);
            }
            if (!more) break;
            const int task = (int)(ticket - passed);
            cpu_attention_forward_strip(a, &w.at, (int)((int64_t)parts * task / tasks),
                                        (int)((int64_t)parts * (task + 1) / tasks));
        }
        cpu_tiles_end(a);
    }
}

#endif
