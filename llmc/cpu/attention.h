/* attention.h - blocked attention over segments with shared prefixes, for the processor, in float32.
 *
 * Owns attention_forward, attention_backward and kv_store of backend.h. On this device Acts and Floats are float arrays
 * and Ints int32 arrays. Softmax is computed online over blocks of keys (Milakov and Gimelshein 2018; FlashAttention:
 * Dao et al. 2022), so no array grows with the square of the length. Nothing is allocated: all scratch memory is on the
 * thread's stack, at most 0.4 MB.
 *
 * The unit of work is a strip: up to LANES queries that read one key head. Each query is a `lane`, and the lane is the
 * last index of a strip's arrays. Softmax, its statistics and the products S^T = K Q^T and O^T += V^T P^T are therefore
 * vectorised over queries and read the rows of K and V in place. The lanes of a strip are the rows of one segment, or
 * all rows of consecutive short segments with the same prefix (the completions of a GRPO group, in training and in
 * decode), each with all the query heads that share the key head. Keys and values that they share are read once.
 *
 * If a segment has very few lanes (one in decode), its own keys are processed differently: as dot products along the
 * channels, which run at the speed of memory.
 *
 * The division of a query's keys into blocks and the choice of path depend on the query's own segment alone. A result
 * therefore does not depend, to the last bit, on the other segments of the batch, on its place in the batch or on the
 * number of threads.
 *
 * The backward pass runs one thread per family and key head, so that no two threads add to the same gradient.
 *
 * Refuses (assert): heads of more than 1024 channels; in the backward pass also keys that are not rows of the batch,
 * and a prefix outside the segment's family.
 *
 * To reach the processor's speed, compile with -O3 -ffp-contract=fast (without it, gcc generates no fused multiply-add
 * in -std=c11).
 */
#ifndef LLMC_CPU_ATTENTION_H
#define LLMC_CPU_ATTENTION_H

#include "../model/backend.h"
#include "vector_math.h"
#include "product.h"
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* ==== Strips and tasks ==== */

enum {
    CPU_LANES = 64,       /* queries in a strip */
    CPU_HEAD_MAX = 1024,  /* channels in a head */
    CPU_STRIP = 64 * 256, /* maximum of lanes * channels */
    CPU_KEYS = 64,        /* keys in a block that is visible to all lanes */
    CPU_KEYS_EDGE = 16,   /* keys in a block on the causal edge */
    CPU_FEW = 8,          /* maximum number of lanes for which a segment's own keys are processed along the channels */
    CPU_ROW_RUN = 256,    /* on that path: minimum number of channels of a key that one task reads */
    CPU_AHEAD = 32,       /* on that path: distance of the prefetch, in keys */
};

/* Rows r0 .. r1-1 of segment s0 if s1 = s0+1. Otherwise all rows of segments s0 .. s1-1, which share a prefix. */
typedef struct CpuStrip {
    int s0, s1, r0, r1;
} CpuStrip;

typedef struct CpuStrips {
    const Segment *segment;
    int segments, rows_max; /* rows_max: maximum rows of a strip */
    CpuStrip at;
} CpuStrips;

/* The lanes of one segment: first .. last-1. */
typedef struct CpuPiece {
    int segment, first, last;
    bool few;
} CpuPiece;

typedef struct CpuLanes {
    int count, padded; /* number of queries; the same rounded up to whole vectors */
    int pieces;
    CpuPiece piece[CPU_LANES];
    int row[CPU_LANES], head[CPU_LANES];
    int own[CPU_LANES];  /* number of its segment's own keys that are visible to the lane; increases within a piece */
    int seen[CPU_LANES]; /* number of the current keys that are visible to the lane */
} CpuLanes;

static inline const Segment *cpu_segments(const Attention *a) { return (const Segment *)(const void *)a->segment; }

/* Maximum number of lanes in a strip: 64, fewer for very wide heads. */
static inline int cpu_lanes_max(int head_size) { return head_size <= 256 ? 64 : head_size <= 512 ? 32 : 16; }

/* Number of query heads that share a key head, and how many of them fit in a strip: usually all. */
static inline int cpu_heads_shared(const Attention *a) { return a->heads / a->kv_heads; }
static inline int cpu_heads_strip(const Attention *a) {
    const int shared = cpu_heads_shared(a), most = cpu_lanes_max(a->head_size);
    return shared < most ? shared : most;
}

/* A part: query heads h0 .. h1-1, which share a key head and fit in a strip. Parts are numbered by head. */
typedef struct CpuPart {
    int h0, h1;
} CpuPart;

static inline int cpu_parts_shared(const Attention *a) {
    return (cpu_heads_shared(a) + cpu_heads_strip(a) - 1) / cpu_heads_strip(a);
}
static inline int cpu_parts(const Attention *a) { return a->kv_heads * cpu_parts_shared(a); }

static inline CpuPart cpu_part(const Attention *a, int u) {
    const int shared = cpu_heads_shared(a), heads = cpu_heads_strip(a), each = cpu_parts_shared(a);
    const int h0 = u / each * shared + u % each * heads, end = (u / each + 1) * shared;
    return (CpuPart){h0, h0 + heads < end ? h0 + heads : end};
}

/* Does a segment of this many rows use the path for few lanes? */
static inline bool cpu_few(const Attention *a, int rows) { return rows * cpu_heads_strip(a) <= CPU_FEW; }

static inline CpuStrips cpu_strips(const Attention *a, int first, int end) {
    CpuStrips w = {.segment = cpu_segments(a), .segments = end, .at = {first, first, 0, 0}};
    w.rows_max = cpu_lanes_max(a->head_size) / cpu_heads_strip(a);
    return w;
}

/* Moves to the next strip; false at the end. Within a segment, strips with more keys come first. */
static inline bool cpu_strips_next(CpuStrips *w) {
    CpuStrip *p = &w->at;
    if (p->s1 == p->s0 + 1 && p->r0 > 0) {
        p->r1 = p->r0;
        p->r0 -= w->rows_max;
        return true;
    }
    int s = p->s1;
    while (s < w->segments && w->segment[s].len <= 0) s++;
    if (s >= w->segments) return false;
    const Segment *first = &w->segment[s];
    p->s0 = s++;
    p->r1 = first->len;
    p->r0 = (first->len - 1) / w->rows_max * w->rows_max;
    int rows = first->len;
    if (first->prefix_len > 0)
        while (s < w->segments && w->segment[s].prefix_start == first->prefix_start &&
               w->segment[s].prefix_len == first->prefix_len && rows + w->segment[s].len <= w->rows_max)
            rows += w->segment[s++].len;
    p->s1 = s;
    return true;
}

/* Sets the rows of segment s that are in the strip: r0 .. r1-1. */
static inline void cpu_strip_rows(const CpuStrip *p, const Segment *segment, int s, int *r0, int *r1) {
    const bool whole = p->s1 > p->s0 + 1;
    *r0 = whole ? 0 : p->r0;
    *r1 = whole ? segment[s].len : p->r1;
}

/* Number of tasks into which the forward pass divides a strip. It is one task per part, but if the strip has rows with
 * few lanes, a task has enough parts to read 1 KB of a key, or 4 KB if there are plenty of tasks. The division does not
 * change the results. */
static inline int cpu_strip_tasks(const Attention *a, const CpuStrip *p) {
    const int parts = cpu_parts(a), channels = a->segments < 8 ? CPU_ROW_RUN : 4 * CPU_ROW_RUN;
    const int wide = (channels + a->head_size - 1) / a->head_size;
    const int most = CPU_LANES / cpu_heads_strip(a), run = wide < most ? wide : most;
    for (int s = p->s0; s < p->s1; s++) {
        int r0, r1;
        cpu_strip_rows(p, cpu_segments(a), s, &r0, &r1);
        if (r1 > r0 && cpu_few(a, r1 - r0)) return (parts + run - 1) / run;
    }
    return parts;
}

/* Assigns lanes to a part of a strip: segment by segment, row by row, head by head. */
static inline void cpu_lanes_fill(CpuLanes *l, const Attention *a, const CpuStrip *p, CpuPart part) {
    const Segment *segment = cpu_segments(a);
    int n = 0;
    l->pieces = 0;
    for (int s = p->s0; s < p->s1; s++) {
        int r0, r1;
        cpu_strip_rows(p, segment, s, &r0, &r1);
        if (r0 >= r1) continue;
        l->piece[l->pieces++] = (CpuPiece){s, n, n + (r1 - r0) * (part.h1 - part.h0), cpu_few(a, r1 - r0)};
        for (int r = r0; r < r1; r++)
            for (int h = part.h0; h < part.h1; h++, n++) {
                l->row[n] = segment[s].start + r;
                l->head[n] = h;
                l->own[n] = segment[s].past + r + 1;
            }
    }
    l->count = n;
    l->padded = (n + CPU_VEC - 1) / CPU_VEC * CPU_VEC;
}

/* to[D, ld] = scale * the lanes' rows of x. Padding lanes are set to 0. */
static inline void cpu_lanes_load(float *to, size_t ld, const CpuLanes *l, const float *x, size_t stride, int D,
                                  float scale) {
    static const float zeros[CPU_HEAD_MAX];
    for (int lane = 0; lane < l->padded; lane += 4) {
        const float *source[4];
        for (int i = 0; i < 4; i++)
            source[i] = lane + i < l->count ? x + l->row[lane + i] * stride + (size_t)l->head[lane + i] * D : zeros;
        cpu_transpose_in(to + lane, ld, source, D, scale);
    }
}

/* The lanes' rows of x = from[D, ld] * scale[lane]. */
static inline void cpu_lanes_store(float *x, size_t stride, const CpuLanes *l, const float *from, size_t ld, int D,
                                   const float *scale) {
    for (int lane = 0; lane < l->count; lane += 4) {
        float *to[4];
        for (int i = 0; i < 4; i++)
            to[i] = lane + i < l->count ? x + l->row[lane + i] * stride + (size_t)l->head[lane + i] * D : NULL;
        cpu_transpose_out(to, from + lane, ld, D, scale + lane);
    }
}

/* One block of keys, the lanes (whole vectors) to which any of them is visible, and whether some must be masked. */
typedef struct CpuBlock {
    int key, keys, first, last; /* keys key .. key+keys-1; lanes first .. last-1 */
    bool masked;
} CpuBlock;

/* Moves to the next block of the first `keys` keys for lanes lane0 .. lane1-1, of which l->seen[lane] are visible to
 * each. Start with a zeroed block; false at the end. The division depends only on l->seen of these lanes. */
static inline bool cpu_block_next(CpuBlock *b, const CpuLanes *l, int lane0, int lane1, int keys) {
    b->key += b->keys;
    if (b->key >= keys) return false;
    const int all = l->seen[lane0]; /* visible to all of these lanes */
    const int step = all >= keys || b->key + CPU_KEYS <= all ? CPU_KEYS : CPU_KEYS_EDGE;
    b->keys = step < keys - b->key ? step : keys - b->key;
    b->first = lane0 / CPU_VEC * CPU_VEC;
    b->last = (lane1 + CPU_VEC - 1) / CPU_VEC * CPU_VEC;
    for (; b->first + CPU_VEC < b->last; b->first += CPU_VEC) /* causal edge: skip lanes to which none is visible */
        if (l->seen[b->first + CPU_VEC - 1] > b->key) break;
    b->masked = false;
    for (int lane = b->first; lane < b->last; lane++) b->masked |= l->seen[lane] < b->key + b->keys;
    return true;
}

/* Sets l->seen for the own keys of one segment, which are not visible to the lanes of other segments. */
static inline void cpu_lanes_own(CpuLanes *l, CpuPiece p) {
    for (int lane = 0; lane < l->padded; lane++) l->seen[lane] = lane >= p.first && lane < p.last ? l->own[lane] : 0;
}

static inline void cpu_lanes_all(CpuLanes *l, int keys) {
    for (int lane = 0; lane < l->padded; lane++) l->seen[lane] = keys;
}

/* Number of visible pairs of a query and a key over all heads, to decide whether threads pay off. */
static inline double cpu_attention_pairs(const Attention *a) {
    double pairs = 0;
    const Segment *s = cpu_segments(a);
    for (int i = 0; i < a->segments; i++) pairs += (double)s[i].len * (s[i].prefix_len + s[i].past + 0.5 * s[i].len);
    return pairs * a->heads;
}
enum { CPU_PAIRS_THREADED = 4096 }; /* about 10 microseconds with 64 channels */

/* Zeros `columns` columns of the rows that are in no segment, before anything else is written. These are the gaps
 * between segments if segments are in the order of their rows. Otherwise (no batch here is like that) all rows are
 * zeroed. */
static inline void cpu_zero_outside(const Attention *a, float *x, size_t stride, size_t columns) {
    const Segment *s = cpu_segments(a);
    bool ordered = true;
    for (int i = 1; i < a->segments; i++) ordered &= s[i].start >= s[i - 1].start + s[i - 1].len;
    int row = 0;
    for (int i = 0; i <= a->segments; i++) {
        const int end = i < a->segments && ordered ? s[i].start : a->rows;
        for (; row < end; row++) memset(x + row * stride, 0, columns * sizeof *x);
        if (i < a->segments) row = ordered ? s[i].start + s[i].len : row;
    }
}

/* ==== Forward ==== */

typedef struct CpuForward {
    CpuLanes lanes;
    float m[CPU_LANES], sum[CPU_LANES], alpha[CPU_LANES]; /* running maximum and denominator; last rescaling factor */
    float q[CPU_STRIP] __attribute__((aligned(64)));      /* scaled, (D, LANES) */
    float out[CPU_STRIP] __attribute__((aligned(64)));    /* not yet divided by the denominator, (D, LANES) */
    float s[CPU_KEYS * CPU_LANES] __attribute__((aligned(64))); /* scores, then probabilities, (KEYS, LANES) */
} CpuForward;

/* Converts the scores of a block to probabilities relative to the new maximum, for lanes first .. last-1:
 *   m' = max(m, max_k s),  alpha = e^(m - m'),  p = e^(s - m'),  sum = alpha sum + sum_k p */
static inline void cpu_softmax_block(CpuForward *f, const CpuBlock *b, size_t ld) {
    for (int at = b->first; at < b->last; at += CPU_VEC) {
        float next[CPU_VEC], total[CPU_VEC];
        const int *seen = f->lanes.seen + at;
        for (int i = 0; i < CPU_VEC; i++) next[i] = f->m[at + i];
        for (int k = 0; k < b->keys; k++) {
            float *s = f->s + k * ld + at;
            if (b->masked) {
                const int key = b->key + k;
#pragma omp simd
                for (int i = 0; i < CPU_VEC; i++) s[i] = key < seen[i] ? s[i] : -INFINITY;
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

/* Prefetches D floats at x into the second-level cache. A head's part of a row is short and the rows are far apart, so
 * the hardware prefetcher detects no stream. Saves a quarter to a half of the time of decode. */
static inline void cpu_prefetch(const float *x, int D) {
    for (int d = 0; d < D; d += 16) __builtin_prefetch(x + d, 0, 2);
}

/* Lanes lane0 .. lane1-1 attend to the first `keys` rows of k and v, masked by lanes.seen. */
static inline void cpu_attend(CpuForward *f, const Attention *a, const float *k, const float *v, int keys, int lane0,
                              int lane1) {
    const int D = a->head_size;
    const size_t ld = cpu_lanes_max(D), stride = a->kv_stride;
    for (CpuBlock b = {0}; cpu_block_next(&b, &f->lanes, lane0, lane1, keys);) {
        const int n = b.last - b.first;
        if (f->lanes.count <= CPU_VEC) /* little work per key: memory is the bottleneck */
            for (int i = b.key; i < b.key + b.keys; i++) {
                cpu_prefetch(v + i * stride, D);
                if (i + b.keys < keys) cpu_prefetch(k + (i + b.keys) * stride, D);
            }
        cpu_product_set(b.keys, n, D, k + b.key * stride, stride, 1, f->q + b.first, ld, f->s + b.first, ld);
        cpu_softmax_block(f, &b, ld);
        cpu_product_rescale(D, n, b.keys, v + b.key * stride, 1, stride, f->s + b.first, ld, f->out + b.first, ld,
                            f->alpha + b.first);
    }
}

/* s[i] = scale q . k_i for 4 keys that are `stride` apart */
static inline void cpu_dots4(float s[4], const float *q, const float *k, size_t stride, int D, float scale) {
    CpuVec sum[4] = {{0}};
    int d = 0;
    for (; d + CPU_VEC <= D; d += CPU_VEC) {
        const CpuVec x = *(const CpuVec *)(q + d);
        CPU_UNROLL for (int i = 0; i < 4; i++) sum[i] = sum[i] + x * *(const CpuVec *)(k + i * stride + d);
    }
    CpuQuad part[4];
    CPU_UNROLL for (int i = 0; i < 4; i++) {
        CpuQuad quad[CPU_VEC / 4];
        memcpy(quad, &sum[i], sizeof quad);
        for (int step = CPU_VEC / 8; step; step /= 2)
            for (int j = 0; j < step; j++) quad[j] += quad[j + step];
        part[i] = quad[0];
    }
    cpu_transpose4(part, part);
    CpuQuad total = (part[0] + part[1]) + (part[2] + part[3]);
    for (; d < D; d++)
        for (int i = 0; i < 4; i++) total[i] += q[d] * k[i * stride + d];
    *(CpuQuad *)s = total * scale;
}

/* The same softmax for heads h0 .. h1-1 of one query row over `keys` keys, along the channels: rows of k and v are read
 * from end to end, which is the fastest order for memory. On entry the row of `out` holds the weighted values of the
 * prefix, not yet divided by the denominator, with m and sum per head; on return it holds the result. Meanwhile the
 * first next_keys rows of k from next_start on are prefetched for the next query row. */
static inline void cpu_attend_row(const Attention *a, int row, int h0, int h1, size_t key_start, int keys, float *m,
                                  float *sum, size_t next_start, int next_keys) {
    const int D = a->head_size, shared = cpu_heads_shared(a), from = h0 / shared * D, end = (h1 - 1) / shared * D + D;
    const size_t stride = a->kv_stride;
    const float *next_k = (const float *)a->k + next_start * stride + from;
    const float *k = (const float *)a->k + key_start * stride, *v = (const float *)a->v + key_start * stride;
    const float *q = (const float *)a->q + (size_t)row * a->q_stride;
    float *out = (float *)a->out + (size_t)row * a->heads * D;
    float p[CPU_LANES][CPU_KEYS];
    for (int key = 0; key < keys; key += CPU_KEYS, k += CPU_KEYS * stride, v += CPU_KEYS * stride) {
        const int n = keys - key < CPU_KEYS ? keys - key : CPU_KEYS;
        for (int i = 0; i < n; i += 4)
            for (int h = h0; h < h1; h++) {
                const float *from = k + i * stride + (size_t)(h / shared) * D;
                for (int j = i; j < i + 4 && j < n; j++) {
                    cpu_prefetch(v + j * stride + (size_t)(h / shared) * D, D);
                    if (key + j + CPU_AHEAD < keys) cpu_prefetch(from + (j - i + CPU_AHEAD) * stride, D);
                }
                if (i + 4 <= n) cpu_dots4(p[h - h0] + i, q + (size_t)h * D, from, stride, D, a->scale);
                else
                    for (int j = 0; j < n - i; j++) { /* 4 times the same key, to sum in the same order */
                        float same[4];
                        cpu_dots4(same, q + (size_t)h * D, from + j * stride, 0, D, a->scale);
                        p[h - h0][i + j] = same[0];
                    }
            }
        for (int h = h0; h < h1; h++) {
            float *s = p[h - h0], next = m[h - h0], total = 0;
            for (int i = 0; i < n; i++) next = next > s[i] ? next : s[i];
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
            for (int h = h0; h < h1; h++) {
                const float *x = v + i * stride + (size_t)(h / shared) * D, *s = p[h - h0] + i;
                float *o = out + (size_t)h * D;
                if (i + 4 <= n)
#pragma omp simd
                    for (int d = 0; d < D; d++)
                        o[d] += (s[0] * x[d] + s[1] * x[stride + d]) +
                                (s[2] * x[2 * stride + d] + s[3] * x[3 * stride + d]);
                else
#pragma omp simd
                    for (int d = 0; d < D; d++) o[d] += s[0] * x[d];
            }
        }
    }
    for (int h = h0; h < h1; h++) {
        for (int d = 0; d < D; d++) out[(size_t)h * D + d] *= 1.0f / sum[h - h0];
        if (a->lse) ((float *)a->lse)[(size_t)row * a->heads + h] = m[h - h0] + logf(sum[h - h0]);
    }
}

/* Attends to a strip's prefix and, for pieces with many lanes, to their own keys, for the query heads of f->lanes,
 * which begin at h0 and share a key head. Finished lanes are stored to `out` divided by the denominator. Pieces with
 * few lanes are stored undivided, for cpu_attend_row(). */
static inline void cpu_attend_lanes(CpuForward *f, const Attention *a, int prefix_start, int prefix, int h0) {
    CpuLanes *l = &f->lanes;
    const Segment *segment = cpu_segments(a);
    const int D = a->head_size;
    const size_t ld = cpu_lanes_max(D), stride = a->kv_stride, from = (size_t)(h0 / cpu_heads_shared(a)) * D;
    const float *k = (const float *)a->k + from, *v = (const float *)a->v + from;
    float scale[CPU_LANES], *lse = (float *)a->lse;
    for (int lane = 0; lane < l->padded; lane++) {
        f->m[lane] = -3e38f;
        f->sum[lane] = 0;
        scale[lane] = 1;
    }
    cpu_lanes_load(f->q, ld, l, (const float *)a->q, a->q_stride, D, a->scale);
    for (int d = 0; d < D; d++) memset(f->out + d * ld, 0, l->padded * sizeof(float));
    cpu_lanes_all(l, prefix);
    cpu_attend(f, a, k + prefix_start * stride, v + prefix_start * stride, prefix, 0, l->count);
    for (int i = 0; i < l->pieces; i++) {
        const CpuPiece own = l->piece[i];
        const size_t start = segment[own.segment].key_start * stride;
        if (own.few) continue;
        cpu_lanes_own(l, own);
        cpu_attend(f, a, k + start, v + start, l->own[own.last - 1], own.first, own.last);
        for (int lane = own.first; lane < own.last; lane++) {
            scale[lane] = 1.0f / f->sum[lane];
            if (lse) lse[(size_t)l->row[lane] * a->heads + l->head[lane]] = f->m[lane] + logf(f->sum[lane]);
        }
    }
    cpu_lanes_store((float *)a->out, (size_t)a->heads * D, l, f->out, ld, D, scale);
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
                memset((float *)a->out + ((size_t)l->row[lane] * a->heads + first) * a->head_size, 0,
                       (size_t)(end - first) * a->head_size * sizeof(float));
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
    cpu_zero_outside(a, (float *)a->out, (size_t)a->heads * a->head_size, (size_t)a->heads * a->head_size);
    if (a->lse) cpu_zero_outside(a, (float *)a->lse, a->heads, a->heads);
    const int parts = cpu_parts(a);
    int64_t tickets = 0;
#pragma omp parallel if (cpu_attention_pairs(a) > CPU_PAIRS_THREADED)
    {
        /* A task is a range of parts of a strip. Each thread goes through the strips up to the task of its ticket. */
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
    }
}

/* ==== Backward ==== */

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
} CpuBackward;

/* P = e^(S - lse), dS = P (dP - delta), with P = 0 if the key is not visible to the lane */
static inline void cpu_softmax_backward_block(CpuBackward *f, const CpuBlock *b, size_t ld) {
    for (int at = b->first; at < b->last; at += CPU_VEC) {
        float lse[CPU_VEC], delta[CPU_VEC];
        const int *seen = f->lanes.seen + at;
        for (int i = 0; i < CPU_VEC; i++) {
            lse[i] = f->lse[at + i];
            delta[i] = f->delta[at + i];
        }
        for (int k = 0; k < b->keys; k++) {
            float *p = f->p + k * ld + at, *ds = f->ds + k * ld + at;
            if (b->masked) {
                const int key = b->key + k;
#pragma omp simd
                for (int i = 0; i < CPU_VEC; i++) p[i] = key < seen[i] ? p[i] : -INFINITY;
            }
#pragma omp simd
            for (int i = 0; i < CPU_VEC; i++) {
                p[i] = cpu_exp(p[i] - lse[i]);
                ds[i] = p[i] * (ds[i] - delta[i]);
            }
        }
    }
}

/* Lanes lane0 .. lane1-1 and the first `keys` rows of k and v, masked by lanes.seen (Dao et al. 2022, alg. 4):
 *   dV += P^T dO,  dP = dO V^T,  dK += dS^T Q,  dQ += dS K */
static inline void cpu_differentiate(CpuBackward *f, const Attention *a, size_t row, int kv, int keys, int lane0,
                                     int lane1) {
    const int D = a->head_size;
    const size_t ld = cpu_lanes_max(D), stride = a->kv_stride, start = row * stride + (size_t)kv * D;
    const float *k = (const float *)a->k + start, *v = (const float *)a->v + start;
    float *dk = (float *)a->dk + start, *dv = (float *)a->dv + start;
    for (CpuBlock b = {0}; cpu_block_next(&b, &f->lanes, lane0, lane1, keys);) {
        const int n = b.last - b.first, used = (b.last < f->lanes.count ? b.last : f->lanes.count) - b.first;
        const size_t at = b.key * stride;
        float *p = f->p + b.first, *ds = f->ds + b.first;
        cpu_product_set(b.keys, n, D, k + at, stride, 1, f->q + b.first, ld, p, ld);
        cpu_product_set(b.keys, n, D, v + at, stride, 1, f->dout + b.first, ld, ds, ld);
        cpu_softmax_backward_block(f, &b, ld);
        cpu_product_add(b.keys, D, used, p, ld, 1, f->dout_row + b.first * D, D, dv + at, stride);
        cpu_product_add(b.keys, D, used, ds, ld, 1, f->q_row + b.first * D, D, dk + at, stride);
        cpu_product_add(D, n, b.keys, k + at, 1, stride, ds, ld, f->dq + b.first, ld);
    }
}

static inline void cpu_attention_backward_strip(const Attention *a, const CpuStrip *p, int kv, CpuPart part) {
    CpuBackward f;
    CpuLanes *l = &f.lanes;
    const Segment *segment = cpu_segments(a);
    const int D = a->head_size, prefix = segment[p->s0].prefix_len;
    const size_t ld = cpu_lanes_max(D), out_stride = (size_t)a->heads * D;
    const float *out = (const float *)a->out, *dout = (const float *)a->dout, *lse = (const float *)a->lse;
    float scale[CPU_LANES];
    cpu_lanes_fill(l, a, p, part);
    cpu_lanes_load(f.q, ld, l, (const float *)a->q, a->q_stride, D, a->scale);
    cpu_lanes_load(f.dout, ld, l, dout, out_stride, D, 1);
    for (int d = 0; d < D; d++) memset(f.dq + d * ld, 0, l->padded * sizeof(float));
    for (int lane = 0; lane < l->padded; lane++) {
        f.lse[lane] = f.delta[lane] = 0;
        scale[lane] = a->scale;
    }
    for (int lane = 0; lane < l->count; lane++) {
        const size_t row = l->row[lane], at = row * out_stride + (size_t)l->head[lane] * D;
        const float *q = (const float *)a->q + row * a->q_stride + (size_t)l->head[lane] * D;
        float delta = 0;
#pragma omp simd reduction(+ : delta)
        for (int d = 0; d < D; d++) {
            f.q_row[lane * D + d] = q[d] * a->scale;
            f.dout_row[lane * D + d] = dout[at + d];
            delta += dout[at + d] * out[at + d];
        }
        f.delta[lane] = delta;
        f.lse[lane] = lse[row * a->heads + l->head[lane]];
    }
    cpu_lanes_all(l, prefix);
    cpu_differentiate(&f, a, segment[p->s0].prefix_start, kv, prefix, 0, l->count);
    for (int i = 0; i < l->pieces; i++) {
        const CpuPiece own = l->piece[i];
        cpu_lanes_own(l, own);
        cpu_differentiate(&f, a, segment[own.segment].key_start, kv, l->own[own.last - 1], own.first, own.last);
    }
    cpu_lanes_store((float *)a->dq, a->q_stride, l, f.dq, ld, D, scale);
}

/* Iterator over families: segments s0 .. s1-1, one without a prefix and the following ones that have one (batch.h). The
 * rows of a family get gradients from its own queries alone. Families come roughly by decreasing cost: first those of
 * more than half the largest cost, then those of more than a quarter, and so on. */
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

/* Computes all of a family's gradients that belong to key head `kv`. */
static inline void cpu_attention_backward_family(const Attention *a, const CpuFamilies *family, int kv) {
    const Segment *segment = cpu_segments(a);
    const int D = a->head_size;
    for (int s = family->s0; s < family->s1; s++) {
        assert(segment[s].key_start == segment[s].start && segment[s].past == 0);
        assert(segment[s].prefix_len == 0 || (segment[s].prefix_start >= segment[family->s0].start &&
                                              segment[s].prefix_start + segment[s].prefix_len <= segment[s].start));
        for (int row = segment[s].start; row < segment[s].start + segment[s].len; row++) {
            memset((float *)a->dk + (size_t)row * a->kv_stride + (size_t)kv * D, 0, D * sizeof(float));
            memset((float *)a->dv + (size_t)row * a->kv_stride + (size_t)kv * D, 0, D * sizeof(float));
        }
    }
    const int parts = cpu_parts_shared(a);
    for (CpuStrips w = cpu_strips(a, family->s0, family->s1); cpu_strips_next(&w);)
        for (int u = kv * parts; u < (kv + 1) * parts; u++) cpu_attention_backward_strip(a, &w.at, kv, cpu_part(a, u));
}

/* Computes dq, dk and dv of every row from dout, with out and lse of the forward pass; see Attention in backend.h. */
static inline void cpu_attention_backward(Device *device, const Attention *a) {
    (void)device;
    assert(a->head_size <= CPU_HEAD_MAX && a->heads % a->kv_heads == 0);
    const size_t kv_width = (size_t)a->kv_heads * a->head_size;
    cpu_zero_outside(a, (float *)a->dq, a->q_stride, (size_t)a->heads * a->head_size);
    cpu_zero_outside(a, (float *)a->dk, a->kv_stride, kv_width);
    cpu_zero_outside(a, (float *)a->dv, a->kv_stride, kv_width);
    int64_t tickets = 0;
#pragma omp parallel if (cpu_attention_pairs(a) > CPU_PAIRS_THREADED)
    {
        CpuFamilies w = cpu_families(a);
        int64_t passed = 0, ticket;
        for (bool more = cpu_families_next(&w); more;) {
#pragma omp atomic capture
            ticket = tickets++;
            for (; more && ticket >= passed + a->kv_heads; passed += a->kv_heads) more = cpu_families_next(&w);
            if (more) cpu_attention_backward_family(a, &w, (int)(ticket - passed));
        }
    }
}

/* ==== Cache ==== */

/* cache_k[slot[i]] = k[i], cache_v[slot[i]] = v[i] over KC channels. Rows whose slot is -1 are not stored. All other
 * slots are different. */
static inline void cpu_kv_store(Device *device, Acts *cache_k, Acts *cache_v, const Acts *k, const Acts *v, int stride,
                                const Ints *slot, int N, int KC) {
    (void)device;
    const int32_t *to = (const int32_t *)(const void *)slot;
#pragma omp parallel for if ((size_t)N * KC > 65536)
    for (int i = 0; i < N; i++) {
        if (to[i] < 0) continue;
        memcpy((float *)cache_k + (size_t)to[i] * KC, (const float *)k + (size_t)i * stride, KC * sizeof(float));
        memcpy((float *)cache_v + (size_t)to[i] * KC, (const float *)v + (size_t)i * stride, KC * sizeof(float));
    }
}

#endif
