/* attention_strip.h - strips, lanes and blocks: how attention is divided, forward and backward.
 *
 * The unit of work is a strip: up to LANES queries that read one key head. Each query is a `lane`, and the lane is the
 * last index of a strip's arrays. Softmax, its statistics and the products S^T = K Q^T and O^T += V^T P^T are therefore
 * vectorised over queries and read the rows of K and V in place. The lanes of a strip are the rows of one segment, or
 * all rows of consecutive short segments with the same prefix (the completions of a GRPO group, in training and in
 * decode), each with all the query heads that share the key head. Keys and values that they share are read once.
 *
 * The keys of a strip are read in blocks. The division of a query's keys into blocks depends on the query's own segment
 * alone, so that the sums over keys have the same order in any batch.
 *
 * cpu_strips_next() iterates over the strips of a batch, cpu_lanes_fill() assigns the lanes of one, and
 * cpu_block_next() iterates over the blocks of keys that its lanes can see.
 */
#ifndef LLMC_CPU_ATTENTION_STRIP_H
#define LLMC_CPU_ATTENTION_STRIP_H

#include "../model/backend.h" /* Attention */
#include "../model/batch.h"   /* Segment */
#include "act.h"              /* Act, act_floats, CPU_PAIRS, act_store */
#include "product.h"          /* CPU_VEC, cpu_transpose_out, CpuQuad, cpu_transpose4, ... */
#include "product_pairs.h"    /* CpuPair, cpu_pairs_of_rows, cpu_pairs_of_floats */
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

enum {
    CPU_LANES = 64,       /* queries in a strip */
    CPU_HEAD_MAX = 1024,  /* channels in a head */
    CPU_STRIP = 64 * 256, /* maximum of lanes * channels */
    CPU_KEYS = 64,        /* keys in a block that is visible to all lanes */
    CPU_KEYS_EDGE = 16,   /* keys in a block on the causal edge */
    CPU_FEW = 8,          /* maximum number of lanes for which a segment's own keys are processed along the channels */
    CPU_ROW_RUN = 256,    /* on that path: minimum number of channels of a key that one task reads */
    CPU_AHEAD = 32,       /* on that path: distance of the prefetch, in keys */
#ifdef CPU_HALF
    CPU_HALF_HEAD = CPU_HEAD_MAX,            /* floats of a row of a head that is converted */
    CPU_HALF_KEYS = CPU_KEYS * CPU_HEAD_MAX, /* of a block of keys */
#else
    CPU_HALF_HEAD = 1,
    CPU_HALF_KEYS = 1,
#endif
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
    int from[CPU_LANES]; /* the first of them that is inside the lane's window */
    int start;           /* the first key that is inside the window of any lane */
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

/* Returns whether a segment of this many rows uses the path for few lanes. */
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
static inline void cpu_lanes_load(float *to, size_t ld, const CpuLanes *l, const Act *x, size_t stride, int D,
                                  float scale) {
    static const float zeros[CPU_HEAD_MAX];
    float row[4][CPU_HALF_HEAD];
    for (int lane = 0; lane < l->padded; lane += 4) {
        const float *source[4];
        for (int i = 0; i < 4; i++)
            source[i] = lane + i < l->count
                            ? act_floats(row[i], x + l->row[lane + i] * stride + (size_t)l->head[lane + i] * D, D)
                            : zeros;
        cpu_transpose_in(to + lane, ld, source, D, scale);
    }
}

/* The lanes' rows of x = from[D, ld] * scale[lane]. */
static inline void cpu_lanes_store(Act *x, size_t stride, const CpuLanes *l, const float *from, size_t ld, int D,
                                   const float *scale) {
    for (int lane = 0; lane < l->count; lane += 4) {
        Act *to[4];
        for (int i = 0; i < 4; i++)
            to[i] = lane + i < l->count ? x + l->row[lane + i] * stride + (size_t)l->head[lane + i] * D : NULL;
#ifdef CPU_HALF
        float row[4][CPU_HALF_HEAD], *rows[4] = {row[0], row[1], row[2], row[3]};
        cpu_transpose_out(rows, from + lane, ld, D, scale + lane);
        for (int i = 0; i < 4; i++)
            if (to[i]) act_store(to[i], row[i], D);
#else
        cpu_transpose_out(to, from + lane, ld, D, scale + lane);
#endif
    }
}

#ifdef CPU_PAIRS
/* Whether products are those of product_pairs.h. */
static inline bool cpu_head_pairs(const Attention *a) { return a->head_size % CPU_VEC == 0 && a->kv_stride % 2 == 0; }

/* to[D / 2, ld] = the lanes' rows of x in pairs of channels. Padding lanes are set to 0. */
static inline void cpu_lanes_load_pairs(CpuPair *to, size_t ld, const CpuLanes *l, const Act *x, size_t stride, int D) {
    static const Act zeros[CPU_HEAD_MAX];
    for (int lane = 0; lane < l->padded; lane += 4) {
        const Act *row[4];
        for (int i = 0; i < 4; i++)
            row[i] = lane + i < l->count ? x + l->row[lane + i] * stride + (size_t)l->head[lane + i] * D : zeros;
        for (int d = 0; d < D; d += 8) {
            CpuQuad t[4]; /* moved, not computed with */
            for (int i = 0; i < 4; i++) memcpy(&t[i], row[i] + d, sizeof t[i]);
            cpu_transpose4(t, t);
            for (int i = 0; i < 4; i++) memcpy(to + (size_t)(d / 2 + i) * ld + lane, &t[i], sizeof t[i]);
        }
    }
}

/* to[lanes / 2, D] = the lanes' rows of x in pairs of lanes. Padding lanes are set to 0. */
static inline void cpu_lanes_load_rows(CpuPair *to, const CpuLanes *l, const Act *x, size_t stride, int D) {
    static const Act zeros[CPU_HEAD_MAX];
    for (int lane = 0; lane < l->padded; lane += 2) {
        const Act *row[2];
        for (int i = 0; i < 2; i++)
            row[i] = lane + i < l->count ? x + l->row[lane + i] * stride + (size_t)l->head[lane + i] * D : zeros;
        cpu_pairs_of_rows(to + (size_t)(lane / 2) * D, row[0], row[1], D);
    }
}

/* to[(rows + 1) / 2, D] = rows of keys or values of one head in pairs of rows. */
static inline void cpu_head_row_pairs(CpuPair *to, const Act *x, size_t stride, int rows, int D) {
    for (int i = 0; i < rows; i += 2)
        cpu_pairs_of_rows(to + (size_t)(i / 2) * D, x + i * stride, i + 1 < rows ? x + (i + 1) * stride : NULL, D);
}

/* to[(rows + 1) / 2, ld] = columns `first` .. `last` - 1 of x[rows, ld], rounded, in pairs of rows. */
static inline void cpu_block_pairs(CpuPair *to, const float *x, size_t ld, int rows, int first, int last) {
    for (int i = 0; i < rows; i += 2)
        cpu_pairs_of_floats(to + (size_t)(i / 2) * ld + first, x + i * ld + first,
                            i + 1 < rows ? x + (i + 1) * ld + first : NULL, last - first);
}
#endif

/* Rows of keys or values of one head as floats: x itself, or a copy of it in `buffer`, whose rows are D long. *ld receives
 * the distance between rows. */
static inline const float *cpu_head_rows(float *buffer, const Act *x, size_t stride, int rows, int D, size_t *ld) {
#ifdef CPU_HALF
    for (int i = 0; i < rows; i++) act_floats(buffer + (size_t)i * D, x + i * stride, D);
    *ld = D;
    return buffer;
#else
    (void)buffer, (void)rows, (void)D;
    *ld = stride;
    return x;
#endif
}

/* One block of keys, the lanes (whole vectors) to which any of them is visible, and whether some must be masked. */
typedef struct CpuBlock {
    int key, keys, first, last; /* keys key .. key+keys-1; lanes first .. last-1 */
    bool masked;
} CpuBlock;

/* Moves to the next block of the first `keys` keys for lanes lane0 .. lane1-1, of which l->seen[lane] are visible to
 * each. Start with a zeroed block; false at the end. The division depends only on l->seen of these lanes; blocks outside
 * the windows of all lanes are left out. */
static inline bool cpu_block_next(CpuBlock *b, const CpuLanes *l, int lane0, int lane1, int keys) {
    b->key = b->keys ? b->key + b->keys : l->start / CPU_KEYS * CPU_KEYS;
    if (b->key >= keys) return false;
    const int all = l->seen[lane0]; /* visible to all of these lanes */
    const int step = all >= keys || b->key + CPU_KEYS <= all ? CPU_KEYS : CPU_KEYS_EDGE;
    b->keys = step < keys - b->key ? step : keys - b->key;
    b->first = lane0 / CPU_VEC * CPU_VEC;
    b->last = (lane1 + CPU_VEC - 1) / CPU_VEC * CPU_VEC;
    for (; b->first + CPU_VEC < b->last; b->first += CPU_VEC) /* causal edge: skip lanes to which none is visible */
        if (l->seen[b->first + CPU_VEC - 1] > b->key) break;
    b->masked = false;
    for (int lane = b->first; lane < b->last; lane++)
        b->masked |= l->seen[lane] < b->key + b->keys || l->from[lane] > b->key;
    return true;
}

/* Sets the windows of lanes lane0 .. lane1-1. before: how many positions the sequence has before the current keys. */
static inline void cpu_lanes_window(CpuLanes *l, const Attention *a, int prefix, int before, int lane0, int lane1) {
    l->start = a->window ? INT_MAX : 0;
    for (int lane = 0; lane < l->padded; lane++) {
        const int first = prefix + l->own[lane] - a->window - before; /* its position is prefix + own - 1 */
        l->from[lane] = a->window && lane >= lane0 && lane < lane1 && first > 0 ? first : 0;
        if (lane >= lane0 && lane < lane1 && l->from[lane] < l->start) l->start = l->from[lane];
    }
}

/* Sets l->seen and the windows for the own keys of one segment, which are not visible to the lanes of other
 * segments. */
static inline void cpu_lanes_own(CpuLanes *l, const Attention *a, CpuPiece p, int prefix) {
    cpu_lanes_window(l, a, prefix, prefix, p.first, p.last);
    for (int lane = 0; lane < l->padded; lane++) l->seen[lane] = lane >= p.first && lane < p.last ? l->own[lane] : 0;
}

/* The same for the keys of a prefix, all of which are visible to all lanes if there is no window. */
static inline void cpu_lanes_prefix(CpuLanes *l, const Attention *a, int prefix) {
    cpu_lanes_window(l, a, prefix, 0, 0, l->count);
    for (int lane = 0; lane < l->padded; lane++) l->seen[lane] = prefix;
}

/* Number of visible pairs of a query and a key over all heads, to decide whether threads pay off. */
static inline double cpu_attention_pairs(const Attention *a) {
    double pairs = 0;
    const Segment *s = cpu_segments(a);
    for (int i = 0; i < a->segments; i++) pairs += (double)s[i].len * (s[i].prefix_len + s[i].past + 0.5 * s[i].len);
    return pairs * a->heads;
}
enum { CPU_PAIRS_THREADED = 4096 }; /* about 10 microseconds with 64 channels */

/* Zeros `columns` columns, of `size` bytes each, of the rows that are in no segment, before anything else is written. These
 * are the gaps between segments if segments are in the order of their rows. Otherwise (which does not occur in this
 * project) all rows are zeroed. */
static inline void cpu_zero_outside(const Attention *a, void *x, size_t size, size_t stride, size_t columns) {
    const Segment *s = cpu_segments(a);
    bool ordered = true;
    for (int i = 1; i < a->segments; i++) ordered &= s[i].start >= s[i - 1].start + s[i - 1].len;
    int row = 0;
    for (int i = 0; i <= a->segments; i++) {
        const int end = i < a->segments && ordered ? s[i].start : a->rows;
        for (; row < end; row++) memset((char *)x + row * stride * size, 0, columns * size);
        if (i < a->segments) row = ordered ? s[i].start + s[i].len : row;
    }
}

#endif
