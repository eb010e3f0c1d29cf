/* attention_backward.h - the backward pass of attention: gradients of queries, keys and values.
 *
 * Implements attention_backward of backend.h. Probabilities are recomputed from the scores and the log of the
 * denominator that the forward pass kept, block by block (FlashAttention: Dao et al. 2022, alg. 4):
 *
 *   P = e^(S - lse),  dP = dO V^T,  dS = P (dP - delta),  delta = sum_d dO O
 *   dV = P^T dO,      dK = dS^T Q,  dQ = dS K
 *
 * One thread computes one key head of one family (a prefix with the segments that share it), so that no two threads add
 * to the same gradient.
 */
#ifndef LLMC_CPU_ATTENTION_BACKWARD_H
#define LLMC_CPU_ATTENTION_BACKWARD_H

#include "../model/backend.h" /* Attention */
#include "../model/batch.h"   /* Segment */
#include "act.h"              /* Act, act_get, CPU_PAIRS, act_store */
#include "attention_strip.h"  /* CPU_STRIP, CPU_LANES, CPU_KEYS, cpu_segments, ... */
#include "attention_tiles.h"  /* CPU_HEAD_TILES, cpu_head_tiles, cpu_tiles_add, cpu_tiles_set, ... */
#include "gemm.h"             /* Device, cpu_scratch */
#include "product.h"          /* CPU_VEC, cpu_product_add, cpu_product_set */
#include "product_pairs.h"    /* CpuPair, cpu_pairs_add, cpu_pairs_round, cpu_pairs_set */
#include "tiles.h"            /* tiles_exp, tiles_round, tiles_tanh */
#include "vector_math.h"      /* cpu_cap, cpu_exp */
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

typedef struct CpuBackward {
    CpuLanes lanes;
    float lse[CPU_LANES], delta[CPU_LANES];
    float q[CPU_STRIP] __attribute__((aligned(64)));             /* scaled, (D, LANES) */
    float dout[CPU_STRIP] __attribute__((aligned(64)));          /* (D, LANES) */
    float dq[CPU_STRIP] __attribute__((aligned(64)));            /* not yet scaled, (D, LANES) */
    float q_row[CPU_STRIP] __attribute__((aligned(64)));         /* scaled, (LANES, D) */
    float dout_row[CPU_STRIP] __attribute__((aligned(64)));      /* (LANES, D) */
    float p[CPU_KEYS * CPU_LANES] __attribute__((aligned(64)));  /* probabilities, (KEYS, LANES) */
    float ds[CPU_KEYS * CPU_LANES] __attribute__((aligned(64))); /* gradient of the scores, (KEYS, LANES) */
    float keys[CPU_HALF_KEYS] __attribute__((aligned(64)));      /* a block of keys and one of values, if converted */
    float values[CPU_HALF_KEYS] __attribute__((aligned(64)));
#ifdef CPU_PAIRS
    CpuPair q_pairs[CPU_STRIP / 2] __attribute__((aligned(64)));    /* not scaled, (D / 2, LANES) */
    CpuPair dout_pairs[CPU_STRIP / 2] __attribute__((aligned(64))); /* (D / 2, LANES) */
    CpuPair q_rows[CPU_STRIP / 2] __attribute__((aligned(64)));     /* not scaled, (LANES / 2, D) */
    CpuPair dout_rows[CPU_STRIP / 2] __attribute__((aligned(64)));  /* (LANES / 2, D) */
    Act p_half[CPU_KEYS * CPU_LANES] __attribute__((aligned(64)));  /* p and ds, rounded, (KEYS, LANES) */
    Act ds_half[CPU_KEYS * CPU_LANES] __attribute__((aligned(64)));
    CpuPair ds_pairs[CPU_KEYS * CPU_LANES / 2] __attribute__((aligned(64))); /* (KEYS / 2, LANES) */
#endif
    /* the gradients of keys and values of one head, rows row0 .. of the batch, which are `stride` apart */
    float *dk, *dv;
    size_t row0, stride;
} CpuBackward;

/* P = e^(S - lse), dS = P (dP - delta), with P = 0 if the key is not visible to the lane. With a cap, S is
 * cap tanh(s / cap), and the gradient of s is dS (1 - (S / cap)^2). scale: of the scores, unless the queries have it. */
static inline void cpu_softmax_backward_block(CpuBackward *f, const CpuBlock *b, float scale, float cap, size_t ld) {
    const float inverse_cap = cap > 0 ? 1.0f / cap : 0.0f;
    for (int at = b->first; at < b->last; at += CPU_VEC) {
        float lse[CPU_VEC], delta[CPU_VEC], bent[CPU_VEC] = {0};
        const int *seen = f->lanes.seen + at, *from = f->lanes.from + at;
        for (int i = 0; i < CPU_VEC; i++) {
            lse[i] = f->lse[at + i];
            delta[i] = f->delta[at + i];
        }
        for (int k = 0; k < b->keys; k++) {
            float *p = f->p + k * ld + at, *ds = f->ds + k * ld + at;
            if (scale != 1)
                for (int i = 0; i < CPU_VEC; i++) p[i] *= scale;
            if (cap > 0) {
                cpu_cap(p, CPU_VEC, cap);
                for (int i = 0; i < CPU_VEC; i++) bent[i] = p[i] * inverse_cap;
            }
            if (b->masked) {
                const int key = b->key + k;
#pragma omp simd
                for (int i = 0; i < CPU_VEC; i++) p[i] = key < seen[i] && key >= from[i] ? p[i] : -INFINITY;
            }
#pragma omp simd
            for (int i = 0; i < CPU_VEC; i++) {
                p[i] = cpu_exp(p[i] - lse[i]);
                ds[i] = p[i] * (ds[i] - delta[i]) * (1.0f - bent[i] * bent[i]);
            }
            if (scale != 1)
                for (int i = 0; i < CPU_VEC; i++) ds[i] *= scale;
        }
    }
}

#ifdef CPU_HEAD_TILES
/* The same for tiles. P and dS are rounded to f->p_half and f->ds_half, with zeros for the other lanes of `from` .. `to` - 1,
 * and dS to f->ds_pairs, with zeros up to a multiple of 32 keys. */
static inline void cpu_softmax_backward_tiles(CpuBackward *f, const CpuBlock *b, float scale, float cap, size_t ld,
                                              int from, int to) {
    const __m512 factor = _mm512_set1_ps(scale), one = _mm512_set1_ps(1.0f);
    const __m512i zero = _mm512_setzero_si512();
    for (int at = from; at < to; at += CPU_VEC) {
        const bool outside = at < b->first || at >= b->last;
        const __m512 lse = _mm512_loadu_ps(f->lse + at), delta = _mm512_loadu_ps(f->delta + at);
        const __m512i seen = _mm512_loadu_si512(f->lanes.seen + at), start = _mm512_loadu_si512(f->lanes.from + at);
        CpuPair *pairs = f->ds_pairs + at;
        int k = 0;
        for (; k < b->keys; k += 2, pairs += ld) {
            __m512 p[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, ds[2] = {p[0], p[0]};
            for (int i = 0; i < 2 && k + i < b->keys && !outside; i++) {
                const size_t row = (size_t)(k + i) * ld + (size_t)at;
                const __mmask16 in = b->masked ? cpu_tiles_seen(b->key + k + i, seen, start) : 0xffff;
                __m512 s = _mm512_mul_ps(_mm512_load_ps(f->p + row), factor), slope = factor;
                if (cap > 0) {
                    const __m512 bent = tiles_tanh(_mm512_mul_ps(s, _mm512_set1_ps(1.0f / cap)));
                    s = _mm512_mul_ps(_mm512_set1_ps(cap), bent);
                    slope = _mm512_mul_ps(factor, _mm512_fnmadd_ps(bent, bent, one));
                }
                p[i] = _mm512_maskz_mov_ps(in, tiles_exp(_mm512_sub_ps(s, lse)));
                ds[i] = _mm512_mul_ps(_mm512_mul_ps(p[i], slope), _mm512_sub_ps(_mm512_load_ps(f->ds + row), delta));
            }
            const __m512i probabilities = tiles_round(p[0], p[1]), gradients = tiles_round(ds[0], ds[1]);
            Act *p_row = f->p_half + (size_t)k * ld + at, *ds_row = f->ds_half + (size_t)k * ld + at;
            _mm256_store_si256((__m256i *)(void *)p_row, _mm512_castsi512_si256(probabilities));
            _mm256_store_si256((__m256i *)(void *)(p_row + ld), _mm512_extracti64x4_epi64(probabilities, 1));
            _mm256_store_si256((__m256i *)(void *)ds_row, _mm512_castsi512_si256(gradients));
            _mm256_store_si256((__m256i *)(void *)(ds_row + ld), _mm512_extracti64x4_epi64(gradients, 1));
            _mm512_store_si512(pairs, cpu_tiles_pairs(ds[0], ds[1]));
        }
        for (; k % CPU_TILE_DEPTH; k += 2, pairs += ld) _mm512_store_si512(pairs, zero);
    }
}

/* One block of keys and values, and its gradients dk and dv, for the lanes of b. */
static inline void cpu_differentiate_tiles(CpuBackward *f, const Attention *a, const CpuBlock *b, const Act *k,
                                           const Act *v, float *dk, float *dv) {
    const int D = a->head_size, n = b->last - b->first, steps = cpu_tiles_steps(D);
    const int from = b->first / CPU_TILE_DEPTH * CPU_TILE_DEPTH, to = cpu_tiles_up(b->last, CPU_TILE_DEPTH);
    const size_t ld = CPU_LANES, stride = a->kv_stride, lane = (size_t)b->first, rows = (size_t)(from / 2) * (size_t)D;
    Act *keys = (Act *)(void *)f->keys, *values = (Act *)(void *)f->values;
    size_t row;
    const Act *left = cpu_tiles_rows(keys, k, stride, b->keys, D, &row);
    cpu_tiles_set(b->keys, n, steps, left, row, f->q_pairs + lane, ld, f->p + lane, ld);
    left = cpu_tiles_rows(values, v, stride, b->keys, D, &row);
    cpu_tiles_set(b->keys, n, steps, left, row, f->dout_pairs + lane, ld, f->ds + lane, ld);
    cpu_softmax_backward_tiles(f, b, a->scale, a->cap, ld, from, to);
    const int depth = cpu_tiles_steps(to - from);
    cpu_tiles_add(b->keys, D, depth, f->p_half + from, ld, f->dout_rows + rows, D, dv, f->stride);
    cpu_tiles_add(b->keys, D, depth, f->ds_half + from, ld, f->q_rows + rows, D, dk, f->stride);
    cpu_tiles_transpose(keys, k, stride, b->keys, D);
    cpu_tiles_add(D, n, cpu_tiles_steps(b->keys), keys, CPU_KEYS, f->ds_pairs + lane, ld, f->dq + lane, ld);
}
#endif

/* Lanes lane0 .. lane1-1 and the first `keys` rows of k and v, masked by lanes.seen (Dao et al. 2022, alg. 4):
 *   dV += P^T dO,  dP = dO V^T,  dK += dS^T Q,  dQ += dS K */
static inline void cpu_differentiate(CpuBackward *f, const Attention *a, size_t row, int kv, int keys, int lane0,
                                     int lane1) {
    const int D = a->head_size;
    const size_t ld = cpu_lanes_max(D), stride = a->kv_stride, start = row * stride + (size_t)kv * D;
    const Act *k = (const Act *)a->k + start, *v = (const Act *)a->v + start;
    float *dk = f->dk + (row - f->row0) * f->stride, *dv = f->dv + (row - f->row0) * f->stride;
    size_t k_ld, v_ld;
    for (CpuBlock b = {0}; cpu_block_next(&b, &f->lanes, lane0, lane1, keys);) {
        const int n = b.last - b.first, used = (b.last < f->lanes.count ? b.last : f->lanes.count) - b.first;
        const size_t at = b.key * f->stride;
        float *p = f->p + b.first, *ds = f->ds + b.first;
#ifdef CPU_HEAD_TILES
        if (cpu_head_tiles(a)) {
            cpu_differentiate_tiles(f, a, &b, k + b.key * stride, v + b.key * stride, dk + at, dv + at);
            continue;
        }
#endif
#ifdef CPU_PAIRS
        if (cpu_head_pairs(a)) {
            const Act *k_block = k + b.key * stride, *v_block = v + b.key * stride;
            const size_t lane = (size_t)b.first;
            cpu_pairs_set(b.keys, n, D / 2, (const CpuPair *)k_block, stride / 2, 1, f->q_pairs + lane, ld, p, ld);
            cpu_pairs_set(b.keys, n, D / 2, (const CpuPair *)v_block, stride / 2, 1, f->dout_pairs + lane, ld, ds, ld);
            cpu_softmax_backward_block(f, &b, a->scale, a->cap, ld);
            for (int i = 0; i < b.keys; i++) {
                cpu_pairs_round(f->p_half + i * ld + lane, p + i * ld, n);
                cpu_pairs_round(f->ds_half + i * ld + lane, ds + i * ld, n);
            }
            cpu_block_pairs(f->ds_pairs, f->ds, ld, b.keys, b.first, b.last);
            cpu_head_row_pairs((CpuPair *)f->keys, k_block, stride, b.keys, D);
            cpu_pairs_add(b.keys, D, (used + 1) / 2, (const CpuPair *)(f->p_half + lane), ld / 2, 1,
                          f->dout_rows + lane / 2 * (size_t)D, D, dv + at, f->stride);
            cpu_pairs_add(b.keys, D, (used + 1) / 2, (const CpuPair *)(f->ds_half + lane), ld / 2, 1,
                          f->q_rows + lane / 2 * (size_t)D, D, dk + at, f->stride);
            cpu_pairs_add(D, n, (b.keys + 1) / 2, (const CpuPair *)f->keys, 1, D, f->ds_pairs + lane, ld, f->dq + lane,
                          ld);
            continue;
        }
#endif
        const float *keys = cpu_head_rows(f->keys, k + b.key * stride, stride, b.keys, D, &k_ld);
        const float *values = cpu_head_rows(f->values, v + b.key * stride, stride, b.keys, D, &v_ld);
        cpu_product_set(b.keys, n, D, keys, k_ld, 1, f->q + b.first, ld, p, ld);
        cpu_product_set(b.keys, n, D, values, v_ld, 1, f->dout + b.first, ld, ds, ld);
        cpu_softmax_backward_block(f, &b, 1, a->cap, ld);
        cpu_product_add(b.keys, D, used, p, ld, 1, f->dout_row + b.first * D, D, dv + at, f->stride);
        cpu_product_add(b.keys, D, used, ds, ld, 1, f->q_row + b.first * D, D, dk + at, f->stride);
        cpu_product_add(D, n, b.keys, keys, 1, k_ld, ds, ld, f->dq + b.first, ld);
    }
}

/* dk, dv: gradients of the keys and values of head kv, whose rows begin at row0 and are `stride` apart; += */
static inline void cpu_attention_backward_strip(const Attention *a, const CpuStrip *p, int kv, CpuPart part, float *dk,
                                                float *dv, size_t row0, size_t stride) {
    CpuBackward f;
    f.dk = dk;
    f.dv = dv;
    f.row0 = row0;
    f.stride = stride;
    CpuLanes *l = &f.lanes;
    const Segment *segment = cpu_segments(a);
    const int D = a->head_size, prefix = segment[p->s0].prefix_len;
    const size_t ld = cpu_lanes_max(D), out_stride = (size_t)a->heads * D;
    const Act *out = (const Act *)a->out, *dout = (const Act *)a->dout;
    const float *lse = (const float *)a->lse;
    float scale[CPU_LANES];
    cpu_lanes_fill(l, a, p, part);
    bool pairs = false;
#ifdef CPU_PAIRS
    pairs = cpu_head_pairs(a);
    if (pairs) {
        cpu_lanes_load_pairs(f.q_pairs, ld, l, (const Act *)a->q, a->q_stride, D);
        cpu_lanes_load_pairs(f.dout_pairs, ld, l, dout, out_stride, D);
        cpu_lanes_load_rows(f.q_rows, l, (const Act *)a->q, a->q_stride, D);
        cpu_lanes_load_rows(f.dout_rows, l, dout, out_stride, D);
    }
#endif
#ifdef CPU_HEAD_TILES
    if (cpu_head_tiles(a)) {
        cpu_tiles_fill(f.q_pairs, D / 2, ld);
        cpu_tiles_fill(f.dout_pairs, D / 2, ld);
        cpu_tiles_fill(f.q_rows, l->padded / 2, (size_t)D);
        cpu_tiles_fill(f.dout_rows, l->padded / 2, (size_t)D);
    }
#endif
    if (!pairs) {
        cpu_lanes_load(f.q, ld, l, (const Act *)a->q, a->q_stride, D, a->scale);
        cpu_lanes_load(f.dout, ld, l, dout, out_stride, D, 1);
    }
    for (int d = 0; d < D; d++) memset(f.dq + d * ld, 0, l->padded * sizeof(float));
    for (int lane = 0; lane < l->padded; lane++) {
        f.lse[lane] = f.delta[lane] = 0;
        scale[lane] = pairs ? 1 : a->scale;
    }
    for (int lane = 0; lane < l->count; lane++) {
        const size_t row = l->row[lane], at = row * out_stride + (size_t)l->head[lane] * D;
        const Act *q = (const Act *)a->q + row * a->q_stride + (size_t)l->head[lane] * D;
        float delta = 0;
#pragma omp simd reduction(+ : delta)
        for (int d = 0; d < D; d++) {
            if (!pairs) {
                f.q_row[lane * D + d] = act_get(q[d]) * a->scale;
                f.dout_row[lane * D + d] = act_get(dout[at + d]);
            }
            delta += act_get(dout[at + d]) * act_get(out[at + d]);
        }
        f.delta[lane] = delta;
        f.lse[lane] = lse[row * a->heads + l->head[lane]];
    }
    cpu_lanes_prefix(l, a, prefix);
    cpu_differentiate(&f, a, segment[p->s0].prefix_start, kv, prefix, 0, l->count);
    for (int i = 0; i < l->pieces; i++) {
        const CpuPiece own = l->piece[i];
        cpu_lanes_own(l, a, own, prefix);
        cpu_differentiate(&f, a, segment[own.segment].key_start, kv, l->own[own.last - 1], own.first, own.last);
    }
#ifdef CPU_HEAD_TILES
    if (cpu_head_tiles(a)) return cpu_tiles_store((Act *)a->dq, a->q_stride, l, f.dq, D, scale);
#endif
    cpu_lanes_store((Act *)a->dq, a->q_stride, l, f.dq, ld, D, scale);
}

/* Iterator over families: segments s0 .. s1-1, one without a prefix and the following ones that have one (batch.h). The
 * rows of a family get gradients from its own queries alone. Families are visited roughly in order of decreasing cost:
 * first those of more than half the largest cost, then those of more than a quarter, and so on. */
typedef struct CpuFamilies {
    const Segment *segment;
    int segments, s0, s1, halvings;
    double largest;
} CpuFamilies;

enum { CPU_HALVINGS = 4 };

/* Sets s1 to the end of the family that starts at s0 and returns its cost. */
static inline double cpu_family(CpuFamilies *w) {
    double cost = 0;
    int s = w->s0;
    do {
        cost += (double)w->segment[s].len * (w->segment[s].prefix_len + 0.5 * w->segment[s].len);
    } while (++s < w->segments && w->segment[s].prefix_len > 0);
    w->s1 = s;
    return cost;
}

static inline CpuFamilies cpu_families(const Attention *a) {
    CpuFamilies w = {.segment = cpu_segments(a), .segments = a->segments};
    for (; w.s0 < w.segments; w.s0 = w.s1) w.largest = fmax(w.largest, cpu_family(&w));
    w.s0 = w.s1 = 0;
    return w;
}

static inline bool cpu_families_next(CpuFamilies *w) {
    for (;; w->halvings++, w->s1 = 0) {
        const double most = w->halvings ? ldexp(w->largest, -w->halvings) : INFINITY;
        const double least = w->halvings + 1 < CPU_HALVINGS ? ldexp(w->largest, -w->halvings - 1) : -1;
        for (w->s0 = w->s1; w->s0 < w->segments; w->s0 = w->s1) {
            const double cost = cpu_family(w);
            if (cost > least && cost <= most) return true;
        }
        if (w->halvings + 1 >= CPU_HALVINGS) return false;
    }
}

/* The rows first .. end-1 of segments s0 .. s1-1, and any between them. */
typedef struct CpuRows {
    int first, end;
} CpuRows;

static inline CpuRows cpu_family_rows(const Segment *segment, int s0, int s1) {
    CpuRows rows = {segment[s0].start, segment[s0].start};
    for (int s = s0; s < s1; s++) {
        if (segment[s].start < rows.first) rows.first = segment[s].start;
        if (segment[s].start + segment[s].len > rows.end) rows.end = segment[s].start + segment[s].len;
    }
    return rows;
}

/* Floats of scratch memory that a thread needs: gradients of one head's keys and values are summed as floats. */
static inline size_t cpu_attention_sums(const Attention *a) {
#ifdef CPU_HALF
    int most = 0;
    CpuFamilies w = {.segment = cpu_segments(a), .segments = a->segments};
    for (; w.s0 < w.segments; w.s0 = w.s1) {
        cpu_family(&w);
        const CpuRows rows = cpu_family_rows(w.segment, w.s0, w.s1);
        if (rows.end - rows.first > most) most = rows.end - rows.first;
    }
    return 2 * (size_t)most * (size_t)a->head_size;
#else
    (void)a;
    return 0;
#endif
}

/* Computes all of a family's gradients that belong to key head `kv`. sums: cpu_attention_sums() floats. */
static inline void cpu_attention_backward_family(const Attention *a, const CpuFamilies *family, int kv, float *sums) {
    const Segment *segment = cpu_segments(a);
    const int D = a->head_size;
#ifdef CPU_HALF
    const CpuRows rows = cpu_family_rows(segment, family->s0, family->s1);
    const size_t row0 = (size_t)rows.first, stride = (size_t)D, count = (size_t)(rows.end - rows.first) * stride;
    float *dk = sums, *dv = sums + count;
    memset(sums, 0, 2 * count * sizeof *sums);
#else
    (void)sums;
    const size_t row0 = 0, stride = a->kv_stride;
    float *dk = (float *)a->dk + (size_t)kv * D, *dv = (float *)a->dv + (size_t)kv * D;
#endif
    for (int s = family->s0; s < family->s1; s++) {
        assert(segment[s].key_start == segment[s].start && segment[s].past == 0);
        assert(segment[s].prefix_len == 0 || (segment[s].prefix_start >= segment[family->s0].start &&
                                              segment[s].prefix_start + segment[s].prefix_len <= segment[s].start));
#ifndef CPU_HALF
        for (int row = segment[s].start; row < segment[s].start + segment[s].len; row++) {
            memset(dk + (size_t)row * stride, 0, D * sizeof(float));
            memset(dv + (size_t)row * stride, 0, D * sizeof(float));
        }
#endif
    }
    const int parts = cpu_parts_shared(a);
    for (CpuStrips w = cpu_strips(a, family->s0, family->s1); cpu_strips_next(&w);)
        for (int u = kv * parts; u < (kv + 1) * parts; u++)
            cpu_attention_backward_strip(a, &w.at, kv, cpu_part(a, u), dk, dv, row0, stride);
#ifdef CPU_HALF
    for (int s = family->s0; s < family->s1; s++)
        for (int row = segment[s].start; row < segment[s].start + segment[s].len; row++) {
            const size_t at = (size_t)row * a->kv_stride + (size_t)kv * D, from = ((size_t)row - row0) * stride;
            act_store((Act *)a->dk + at, dk + from, D);
            act_store((Act *)a->dv + at, dv + from, D);
        }
#endif
}

/* Computes dq, dk and dv of every row from dout, with out and lse of the forward pass; see Attention in backend.h. */
static inline void cpu_attention_backward(Device *device, const Attention *a) {
    const size_t sums = cpu_attention_sums(a);
    device->partial = (float *)cpu_scratch(device, device->partial, &device->partial_count,
                                           sums * (size_t)omp_get_max_threads(), sizeof(float));
    assert(a->head_size <= CPU_HEAD_MAX && a->heads % a->kv_heads == 0);
    const size_t kv_width = (size_t)a->kv_heads * a->head_size;
    cpu_zero_outside(a, a->dq, sizeof(Act), a->q_stride, (size_t)a->heads * a->head_size);
    cpu_zero_outside(a, a->dk, sizeof(Act), a->kv_stride, kv_width);
    cpu_zero_outside(a, a->dv, sizeof(Act), a->kv_stride, kv_width);
    int64_t tickets = 0;
#pragma omp parallel if (cpu_attention_pairs(a) > CPU_PAIRS_THREADED)
    {
        cpu_tiles_begin(a);
        CpuFamilies w = cpu_families(a);
        int64_t passed = 0, ticket;
        for (bool more = cpu_families_next(&w); more;) {
#pragma omp atomic capture
            ticket = tickets++;
            for (; more && ticket >= passed + a->kv_heads; passed += a->kv_heads) more = cpu_families_next(&w);
            if (more)
                cpu_attention_backward_family(a, &w, (int)(ticket - passed),
                                              device->partial + sums * (size_t)omp_get_thread_num());
        }
        cpu_tiles_end(a);
    }
}

#endif
