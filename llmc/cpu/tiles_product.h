/* tiles_product.h - products of packed bfloat16 matrices with float32 sums, on the processor's tiles (AMX) or by dot
 * products of pairs (AVX512-BF16).
 *
 *   C[rows, cols] = A[rows, depth] B[depth, cols], then an epilogue (TilesEpilogue)
 *
 * A is packed in rows, B in pairs (tiles.h). A unit of work is a range of strips of A, of which TILES_CACHED blocks (512
 * KB) stay in the second-level cache, by a range of panels of B. Up to TILES_STEPS blocks (24 KB) of a panel stay in the
 * first-level cache while the strips pass, by loads that do not displace them (tileloaddt1). Four tiles are 32 x 32 sums:
 * one block of the depth takes four loads and four products. The epilogue of 32 x 32 sums runs during the products of the
 * next ones, a few rows per block, because the tiles leave the vector units idle. Without AMX, the sums of up to 12 rows by
 * 32 columns are in registers, and the epilogue of a block follows its products.
 *
 * The weights of a decode step are read from memory. During the products of a panel the next one is fetched into the
 * second-level cache, and at the end of a unit the first panel of the unit that the thread probably takes next. On AMX, a
 * product of one strip fetches B in the order of its memory, a little in advance, and without AMX one of up to TILES_FEW rows
 * reads it in that order and leaves fetching to the processor.
 *
 * An element's sum depends on the depth alone: not on the other rows or columns, on its place, or on the number of threads.
 */
#ifndef LLMC_CPU_TILES_PRODUCT_H
#define LLMC_CPU_TILES_PRODUCT_H

#include "product.h"          /* CPU_CASES_6, CPU_CASES_12 */
#include "tiles.h"            /* TILES_BLOCK, TILES_BLOCK_SIZE, TILES_INLINE, tiles_blocks, ... */
#include "tiles_activation.h" /* tiles_act, tiles_act_backward, tiles_narrow, tiles_widen_high, ... */
#include <math.h>
#include <omp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    TILES_STEPS = 12,              /* most blocks of a panel in the first-level cache */
    TILES_DEPTH = 32,              /* most blocks of a part of the depth */
    TILES_STRIPS = 32,             /* most strips in a unit of work */
    TILES_GROUP = 12,              /* most panels in a unit, if the depth takes several passes */
    TILES_UNITS = 4,               /* fewest units for each thread, if there are as many */
    TILES_CACHED = 256,            /* most blocks of A in the second-level cache */
    TILES_VECTOR_ROWS = 12,        /* without AMX: most rows whose sums are in registers together */
    TILES_FEW = 6,                 /* without AMX: most rows of a product that reads B in the order of its memory */
    TILES_HEAD_GROUPS = 8,         /* the head: groups of columns with statistics of their own */
    TILES_HEAD_STATISTICS = 4 * 16 /* the head: numbers per row and group */
};

typedef enum TilesEpilogue {
    TILES_STORE,        /* out = C + bias */
    TILES_ADD,          /* out += C */
    TILES_GELU,         /* half = C + bias, rounded; activation->act = gelu(half) */
    TILES_ACTIVATION,   /* backward: C is the gradient of the activations; activation->dpre and ->act are written */
    TILES_STATISTICS,   /* the head: statistics of the logits C; nothing else is stored */
    TILES_HEAD_GRADIENT /* the head, on AMX: gradient = dloss/dC, packed in rows; without AMX tiles_head_strip() */
} TilesEpilogue;

/* The head's logits z = C, or cap tanh(C / cap), for tokens `first` .. of `vocab` tokens; see Head in backend.h. */
typedef struct TilesHead {
    float inverse_temperature, cap;
    int first, vocab;
    const int32_t *target;  /* (rows) */
    const float *reference; /* (rows) near the maximum logit */
    /* (TILES_HEAD_GROUPS, rows, 4, 16) over the tokens so far, of every 16th token: the maximum, sum of e^y with
     * y = (z - reference) / temperature, sum of y e^y, and the token (int32) of the maximum */
    float *statistics;
    float *target_logit; /* (rows) */
    uint16_t *kept;      /* e^y in blocks of 32 x 32, [rows / 32][all tokens / 32], if they are kept; or NULL */
    int panels;          /* all tokens / 32 */
    /* for the gradient, (rows) each */
    const float *max, *log_sum, *entropy, *dlogp, *dentropy; /* dentropy: or NULL */
    const float *logp, *share;                               /* without AMX: of the target; probability / e^y */
    uint16_t *gradient;                                      /* rows x cols, packed in rows */
} TilesHead;

typedef struct TilesProduct {
    int rows, cols, depth;
    const uint16_t *a, *b; /* packed, */
    size_t lda; /* or a [rows, depth] as it is, in rows that are lda apart: not on AMX, depth a multiple of 32 */
    TilesEpilogue epilogue;
    const float *bias; /* (cols) or NULL */
    float *out;        /* rows are ldo apart */
    uint16_t *half;    /* TILES_STORE and TILES_GELU: written in bfloat16 instead of out; NULL: out */
    size_t ldo;
    const TilesActivation *activation;
    const TilesHead *head;
    float *sums; /* scratch: tiles_sums_count() floats */
} TilesProduct;

/* Floats of scratch memory that any product takes with this many threads. */
static inline size_t tiles_sums_count(int threads) {
    return (size_t)threads * (TILES_CACHED / TILES_DEPTH) * TILES_GROUP * TILES_BLOCK_SIZE;
}

static inline int tiles_least(int a, int b) { return a < b ? a : b; }

/* How a product is divided: into blocks of strips, groups of panels, and parts of the depth, all in units of 32. A pass over
 * the panels takes one part, or all of them if A has few strips. */
typedef struct TilesPlan {
    int part, pass, block, blocks, group, groups;
} TilesPlan;

static inline TilesPlan tiles_plan(const TilesProduct *p, int threads) {
    const int strips = (int)tiles_blocks(p->rows), panels = (int)tiles_blocks(p->cols);
    const int steps = (int)tiles_blocks(p->depth), parts = (steps + TILES_DEPTH - 1) / TILES_DEPTH;
    TilesPlan plan = {.part = (steps + parts - 1) / parts};
    plan.pass = strips * steps <= TILES_CACHED ? steps : plan.part;
    const bool once = plan.pass == steps;
    const int most = once ? tiles_least(TILES_CACHED / steps, TILES_STRIPS) : TILES_CACHED / TILES_DEPTH;
    plan.blocks = (strips + most - 1) / most;
    plan.block = (strips + plan.blocks - 1) / plan.blocks;
    plan.blocks = (strips + plan.block - 1) / plan.block;
    int groups = threads > 1 ? (TILES_UNITS * threads + plan.blocks - 1) / plan.blocks : 1;
    while (groups > 1 && plan.blocks * groups % threads) groups++;
    if (p->epilogue == TILES_STATISTICS) groups = TILES_HEAD_GROUPS;
    plan.group = (panels + groups - 1) / groups;
    if (!once && plan.group > TILES_GROUP) plan.group = TILES_GROUP;
    plan.groups = (panels + plan.group - 1) / plan.group;
    return plan;
}

#ifdef CPU_TILES

/* 32 x 32 sums whose epilogue has yet to run. */
typedef struct TilesPending {
    const float *c; /* (32, 32) */
    float *sum;     /* (32, 32) sums of the blocks of the depth before, or NULL */
    bool last;      /* the depth is complete: the epilogue follows; otherwise c is added to `sum` */
    int row, column, done, rows, columns;
} TilesPending;

/* ---- epilogues ------------------------------------------------------------------------------------------------- */

/* One row of 32 logits x, y of tokens `token` ..: adds those of mask in to the row's statistics of its group. kept: the
 * row's e^y in bfloat16, or NULL. */
TILES_INLINE void tiles_statistics(const TilesHead *h, float *row, float reference, int token, __m512 x, __m512 y,
                                   __mmask16 in0, __mmask16 in1, uint16_t *kept) {
    const __m512 low = _mm512_set1_ps(-INFINITY), scale = _mm512_set1_ps(h->inverse_temperature);
    const __m512 center = _mm512_set1_ps(reference);
    const __m512 max = _mm512_load_ps(row), sum = _mm512_load_ps(row + 16), mean = _mm512_load_ps(row + 32);
    x = _mm512_mask_mov_ps(low, in0, x);
    y = _mm512_mask_mov_ps(low, in1, y);
    const __m512 top = _mm512_max_ps(y, x);
    const __mmask16 higher = _mm512_cmp_ps_mask(top, max, _CMP_GT_OQ);
    if (higher) { /* rare after the first panels */
        const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __mmask16 second = _mm512_cmp_ps_mask(y, x, _CMP_GT_OQ);
        const __m512i at = _mm512_mask_add_epi32(lane, second, lane, _mm512_set1_epi32(16));
        _mm512_mask_store_epi32(row + 48, higher, _mm512_add_epi32(at, _mm512_set1_epi32(token)));
        _mm512_mask_store_ps(row, higher, top);
    }
    x = _mm512_mul_ps(_mm512_sub_ps(x, center), scale);
    y = _mm512_mul_ps(_mm512_sub_ps(y, center), scale);
    const __m512 u = _mm512_maskz_mov_ps(in0, tiles_exp_any(x)), v = _mm512_maskz_mov_ps(in1, tiles_exp_any(y));
    _mm512_store_ps(row + 16, _mm512_add_ps(_mm512_add_ps(sum, u), v));
    _mm512_store_ps(row + 32, _mm512_mask3_fmadd_ps(y, v, _mm512_mask3_fmadd_ps(x, u, mean, in0), in1));
    if (kept) _mm512_store_si512(kept, tiles_round(u, v));
}

/* The gradient of the logits z of row r with respect to the sums before the cap; see head_row_backward() in head.h. */
TILES_INLINE __m512 tiles_head_gradient(const TilesHead *h, int r, __m512 z, __mmask16 in, int hit) {
    const __m512 scale = _mm512_set1_ps(h->inverse_temperature);
    const float a = h->dlogp[r] * h->inverse_temperature;
    const __m512 y = _mm512_mul_ps(_mm512_sub_ps(z, _mm512_set1_ps(h->max[r])), scale);
    const __m512 logp = _mm512_sub_ps(y, _mm512_set1_ps(h->log_sum[r]));
    const __m512 p = tiles_exp(logp);
    __m512 slope = _mm512_set1_ps(-a);
    if (h->dentropy) {
        const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-1000.0f), logp);
        slope = _mm512_fnmadd_ps(_mm512_set1_ps(h->dentropy[r] * h->inverse_temperature),
                                 _mm512_add_ps(bounded, _mm512_set1_ps(h->entropy[r])), slope);
    }
    __m512 g = _mm512_maskz_mul_ps(in, p, slope);
    if (hit >= 0 && hit < 16) g = _mm512_mask_add_ps(g, (__mmask16)(1 << hit), g, _mm512_set1_ps(a));
    if (h->cap > 0) {
        const __m512 bent = _mm512_mul_ps(z, _mm512_set1_ps(1.0f / h->cap));
        g = _mm512_maskz_mul_ps(in, g, _mm512_fnmadd_ps(bent, bent, _mm512_set1_ps(1.0f)));
    }
    return g;
}

/* The same from e^y of 16 tokens that were kept in bfloat16. The probability of the target, lane `hit`, comes from its
 * log-probability instead: if it is near 1, the rounding of e^y would be most of its gradient. */
TILES_INLINE __m512 tiles_head_kept(const TilesHead *h, int r, __m512 e, int hit) {
    const __mmask16 target = hit >= 0 && hit < 16 ? (__mmask16)(1 << hit) : 0;
    const float a = h->dlogp[r] * h->inverse_temperature;
    __m512 p = _mm512_mul_ps(e, _mm512_set1_ps(h->share[r])), slope = _mm512_set1_ps(-a), logp = p;
    if (target) p = _mm512_mask_mov_ps(p, target, tiles_exp_any(_mm512_set1_ps(h->logp[r])));
    const __mmask16 some = _mm512_cmp_ps_mask(p, _mm512_set1_ps(0x1p-126f), _CMP_NLT_UQ);
    if (h->dentropy || h->cap > 0) {
        logp = _mm512_mask_mov_ps(_mm512_set1_ps(-1000.0f), some, tiles_log(p));
        if (target) logp = _mm512_mask_mov_ps(logp, target, _mm512_set1_ps(h->logp[r]));
    }
    if (h->dentropy)
        slope = _mm512_fnmadd_ps(_mm512_set1_ps(h->dentropy[r] * h->inverse_temperature),
                                 _mm512_add_ps(logp, _mm512_set1_ps(h->entropy[r])), slope);
    __m512 g = _mm512_mul_ps(p, slope);
    if (target) g = _mm512_mask_add_ps(g, target, g, _mm512_set1_ps(a));
    if (h->cap > 0) {
        const __m512 above = _mm512_add_ps(logp, _mm512_set1_ps(h->log_sum[r]));
        const __m512 z =
            _mm512_fmadd_ps(above, _mm512_set1_ps(1.0f / h->inverse_temperature), _mm512_set1_ps(h->max[r]));
        const __m512 bent = _mm512_mul_ps(z, _mm512_set1_ps(1.0f / h->cap));
        g = _mm512_maskz_mul_ps(some | target, g, _mm512_fnmadd_ps(bent, bent, _mm512_set1_ps(1.0f)));
    }
    return g;
}

/* The block of what is kept of row `row` .. and token `token` .. */
TILES_INLINE uint16_t *tiles_kept(const TilesHead *h, int row, int token) {
    return h->kept +
           ((size_t)(row / TILES_BLOCK) * (size_t)h->panels + (size_t)(token / TILES_BLOCK)) * TILES_BLOCK_SIZE;
}

/* The epilogue of row i of the pending sums, x and y, for the head. */
TILES_INLINE void tiles_finish_head(const TilesProduct *p, TilesEpilogue epilogue, const TilesPending *q, int i,
                                    int group, __m512 x, __m512 y) {
    const TilesHead *h = p->head;
    const int r = q->row + i, token = h->first + q->column, left = h->vocab - token, hit = h->target[r] - token;
    const __mmask16 in0 = tiles_mask16(left), in1 = tiles_mask16(left - 16);
    if (h->cap > 0) {
        const __m512 cap = _mm512_set1_ps(h->cap), inverse = _mm512_set1_ps(1.0f / h->cap);
        x = _mm512_mul_ps(cap, tiles_tanh(_mm512_mul_ps(x, inverse)));
        y = _mm512_mul_ps(cap, tiles_tanh(_mm512_mul_ps(y, inverse)));
    }
    if (epilogue == TILES_STATISTICS) {
        if (hit >= 0 && hit < TILES_BLOCK)
            _mm512_mask_compressstoreu_ps(h->target_logit + r, (__mmask16)(1 << hit % 16), hit < 16 ? x : y);
        const size_t at = ((size_t)group * (size_t)p->rows + (size_t)r) * TILES_HEAD_STATISTICS;
        uint16_t *kept = h->kept ? tiles_kept(h, q->row, token) + TILES_BLOCK * i : NULL;
        tiles_statistics(h, h->statistics + at, h->reference[r], token, x, y, in0, in1, kept);
        return;
    }
    const size_t steps = tiles_blocks(p->cols);
    const size_t block = (size_t)q->row / TILES_BLOCK * steps + (size_t)q->column / TILES_BLOCK;
    x = tiles_head_gradient(h, r, x, in0, hit);
    y = tiles_head_gradient(h, r, y, in1, hit - 16);
    _mm512_store_si512(h->gradient + block * TILES_BLOCK_SIZE + (size_t)(i * TILES_BLOCK), tiles_round(x, y));
}

/* Rows q->done .. end - 1 of the pending sums. */
TILES_INLINE void tiles_finish(const TilesProduct *p, TilesEpilogue epilogue, TilesPending *q, int end, int group) {
    const __mmask16 low = tiles_mask16(q->columns), high = tiles_mask16(q->columns - 16);
    __m512 bias0 = _mm512_setzero_ps(), bias1 = _mm512_setzero_ps();
    const bool stores = epilogue == TILES_STORE || epilogue == TILES_GELU;
    if (stores && p->bias && q->last) {
        bias0 = _mm512_maskz_loadu_ps(low, p->bias + q->column);
        bias1 = _mm512_maskz_loadu_ps(high, p->bias + q->column + 16);
    }
    for (int i = q->done; i < end; i++) {
        __m512 x = _mm512_load_ps(q->c + TILES_BLOCK * i), y = _mm512_load_ps(q->c + TILES_BLOCK * i + 16);
        if (q->sum) {
            float *sum = q->sum + TILES_BLOCK * i;
            x = _mm512_add_ps(_mm512_load_ps(sum), x);
            y = _mm512_add_ps(_mm512_load_ps(sum + 16), y);
            if (!q->last) {
                _mm512_store_ps(sum, x);
                _mm512_store_ps(sum + 16, y);
                continue;
            }
        }
        if (epilogue == TILES_STATISTICS || epilogue == TILES_HEAD_GRADIENT) {
            tiles_finish_head(p, epilogue, q, i, group, x, y);
            continue;
        }
        if (epilogue == TILES_ACTIVATION) {
            tiles_act_backward(p->activation, q->row + i, q->column, low, x);
            tiles_act_backward(p->activation, q->row + i, q->column + 16, high, y);
            continue;
        }
        const size_t at = (size_t)(q->row + i) * p->ldo + (size_t)q->column;
        if (stores && p->half) {
            _mm_prefetch(p->half + at + TILES_BLOCK, _MM_HINT_T1);
            const __m512i both = tiles_round(_mm512_add_ps(x, bias0), _mm512_add_ps(y, bias1));
            _mm512_mask_storeu_epi16(p->half + at, (__mmask32)low | (__mmask32)high << 16, both);
            if (epilogue == TILES_GELU) {
                uint16_t *act = p->activation->act + at;
                _mm_prefetch(act + TILES_BLOCK, _MM_HINT_T1);
                tiles_narrow(act, low, tiles_act(true, tiles_widen_low(both)));
                tiles_narrow(act + 16, high, tiles_act(true, tiles_widen_high(both)));
            }
            continue;
        }
        float *out = p->out + at;
        /* The next panel writes the next lines of the row. Unless they are asked for now, each store waits for its line
         * where results are in no cache, as in a model, and the product takes twice as long. */
        _mm_prefetch(out + TILES_BLOCK, _MM_HINT_T1);
        _mm_prefetch(out + TILES_BLOCK + 16, _MM_HINT_T1);
        if (epilogue == TILES_ADD) {
            x = _mm512_add_ps(_mm512_maskz_loadu_ps(low, out), x);
            y = _mm512_add_ps(_mm512_maskz_loadu_ps(high, out + 16), y);
        } else {
            x = _mm512_add_ps(x, bias0);
            y = _mm512_add_ps(y, bias1);
        }
        _mm512_mask_storeu_ps(out, low, x);
        _mm512_mask_storeu_ps(out + 16, high, y);
    }
    q->done = end;
}

/* Fetches what tiles_act_backward() reads and writes for 32 activations of a row. */
TILES_INLINE void tiles_act_expect(const TilesActivation *t, int row, int column) {
    const size_t F = (size_t)t->hidden, wide = t->kind == MLP_GELU ? F : 2 * F;
    const size_t at = (size_t)row * wide + (size_t)column;
    _mm_prefetch(t->pre + at, _MM_HINT_T1);
    _mm_prefetch(t->dpre + at, _MM_HINT_T1);
    _mm_prefetch(t->act + (size_t)row * F + (size_t)column, _MM_HINT_T1);
    if (t->kind == MLP_GELU) return;
    _mm_prefetch(t->pre + at + F, _MM_HINT_T1);
    _mm_prefetch(t->dpre + at + F, _MM_HINT_T1);
}

/* ---- the kernel ------------------------------------------------------------------------------------------------ */

/* Fetches 8 cache lines from `at` on into the first-level cache. */
TILES_INLINE void tiles_fetch(const char *at) {
    for (int i = 0; i < 8; i++) _mm_prefetch(at + 64 * i, _MM_HINT_T0);
}

/* c [32, 32] = `steps` blocks of a strip of A by as many of a panel of B, for rows `row` .. and columns `column` .. of C.
 * During the products, the pending sums are finished, and `ahead` cache lines per block are prefetched from `next` on; and
 * what the epilogue of an activation needs, if these are its last products. If `ahead` is as many lines as a block has, because
 * the product has one strip, the panel is fetched in the order of its memory instead, half a block in advance. */
TILES_INLINE void tiles_sums(float *c, const uint16_t *a, const uint16_t *b, int steps, const TilesProduct *p,
                             TilesEpilogue epilogue, TilesPending *q, int group, const char *next, int ahead, int row,
                             int column, bool last) {
    const int each = (q->rows - q->done + steps - 1) / steps;
    const bool once = ahead == TILES_BLOCK;
    const int end = epilogue == TILES_ACTIVATION && last ? tiles_least(row + TILES_BLOCK, p->rows) : row;
    const int expected = (end - row + steps - 1) / steps;
    __asm__ volatile("" ::: "memory"); /* gcc 12's intrinsics do not say that they read memory */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int s = 0; s < steps; s++, a += TILES_BLOCK_SIZE, b += TILES_BLOCK_SIZE) {
        const char *soon = (const char *)(b + TILES_BLOCK_SIZE / 2);
        _tile_loadd(6, b, 64);
        if (once) tiles_fetch(soon);
        _tile_stream_loadd(4, a, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (once) tiles_fetch(soon + 512);
        _tile_loadd(7, b + TILES_BLOCK_SIZE / 2, 64);
        if (once) tiles_fetch(soon + 1024);
        _tile_dpbf16ps(1, 4, 7);
        _tile_stream_loadd(5, a + TILES_BLOCK_SIZE / 2, 64);
        _tile_dpbf16ps(2, 5, 6);
        if (once) tiles_fetch(soon + 1536);
        _tile_dpbf16ps(3, 5, 7);
        for (int i = 0; i < (once ? 0 : ahead); i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
        for (int i = 0; i < expected && row < end; i++) tiles_act_expect(p->activation, row++, column);
        if (q->done < q->rows) tiles_finish(p, epilogue, q, q->done + each < q->rows ? q->done + each : q->rows, group);
    }
    _tile_stored(0, c, 4 * TILES_BLOCK);
    _tile_stored(1, c + 16, 4 * TILES_BLOCK);
    _tile_stored(2, c + 16 * TILES_BLOCK, 4 * TILES_BLOCK);
    _tile_stored(3, c + 16 * TILES_BLOCK + 16, 4 * TILES_BLOCK);
}

/* Where rows and blocks of a left operand are, in bytes. */
typedef struct TilesStride {
    size_t row, block;
} TilesStride;

/* c [r, 32] = `steps` blocks of r rows of a strip by as many of a panel, by dot products of pairs (vdpbf16ps), with the
 * sums in registers. `ahead` cache lines per block, up to 32, are prefetched from `next` on. If these are many, because few
 * rows use the panel, they are spread over the pairs, since prefetches that come all at once wait for one another and for the
 * loads, and the panel's next block is fetched into the first-level cache. */
TILES_INLINE void tiles_vector_rows(const int r, float *c, const char *a, TilesStride stride, const uint16_t *b,
                                    int steps, const char *next, int ahead) {
    __m512 left[TILES_VECTOR_ROWS], right[TILES_VECTOR_ROWS];
    const char *base[3] = {a, a + 4 * stride.row, a + 8 * stride.row}; /* addresses of rows take few registers */
    const bool spread = ahead > TILES_BLOCK / 8;
    for (int i = 0; i < r; i++) left[i] = right[i] = _mm512_setzero_ps();
    for (int s = 0; s < steps; s++, b += TILES_BLOCK_SIZE, next += 64 * ahead) {
        for (int i = 0; i < (spread ? 0 : ahead); i++) _mm_prefetch(next + 64 * i, _MM_HINT_T1);
        for (int pair = 0; pair < TILES_BLOCK / 2; pair++) {
            const uint16_t *low = b + TILES_BLOCK * pair, *high = low + TILES_BLOCK_SIZE / 2;
            const __m512bh b0 = (__m512bh)_mm512_load_si512(low), b1 = (__m512bh)_mm512_load_si512(high);
            if (spread) {
                _mm_prefetch(low + TILES_BLOCK_SIZE, _MM_HINT_T0);
                _mm_prefetch(high + TILES_BLOCK_SIZE, _MM_HINT_T0);
                _mm_prefetch(next + 64 * (pair < ahead ? pair : 0), _MM_HINT_T1); /* a branch would be mispredicted */
                if (ahead > TILES_BLOCK / 2) _mm_prefetch(next + 64 * (pair + TILES_BLOCK / 2), _MM_HINT_T1);
            }
#pragma GCC unroll 12
            for (int i = 0; i < r; i++) {
                int32_t both;
                memcpy(&both, base[i / 4] + (size_t)(i % 4) * stride.row + 4 * pair, sizeof both);
                const __m512bh x = (__m512bh)_mm512_set1_epi32(both);
                left[i] = _mm512_dpbf16_ps(left[i], x, b0);
                right[i] = _mm512_dpbf16_ps(right[i], x, b1);
            }
        }
        for (int i = 0; i < 3; i++) base[i] += stride.block;
    }
    for (int i = 0; i < r; i++) {
        _mm512_store_ps(c + TILES_BLOCK * i, left[i]);
        _mm512_store_ps(c + TILES_BLOCK * i + 16, right[i]);
    }
}

/* The same for r rows, all that the product has. Most of its time is that of reading B from memory, so that the first half of a
 * block is read before the second: in the order of the memory, which the processor fetches in advance by itself. */
TILES_INLINE void tiles_vector_few(const int r, float *c, const char *a, TilesStride stride, const uint16_t *b,
                                   int steps) {
    __m512 left[TILES_FEW], right[TILES_FEW];
    for (int i = 0; i < r; i++) left[i] = right[i] = _mm512_setzero_ps();
    for (int s = 0; s < steps; s++, a += stride.block)
        for (int line = 0; line < TILES_BLOCK; line++, b += TILES_BLOCK) {
            const __m512bh y = (__m512bh)_mm512_load_si512(b);
#pragma GCC unroll 6
            for (int i = 0; i < r; i++) {
                int32_t both;
                memcpy(&both, a + (size_t)i * stride.row + 4 * (line % (TILES_BLOCK / 2)), sizeof both);
                const __m512bh x = (__m512bh)_mm512_set1_epi32(both);
                if (line < TILES_BLOCK / 2) left[i] = _mm512_dpbf16_ps(left[i], x, y);
                else right[i] = _mm512_dpbf16_ps(right[i], x, y);
            }
        }
    for (int i = 0; i < r; i++) {
        _mm512_store_ps(c + TILES_BLOCK * i, left[i]);
        _mm512_store_ps(c + TILES_BLOCK * i + 16, right[i]);
    }
}

/* tiles_sums() without tiles, for a product of `all` rows: only the first `rows` rows of c are computed, in groups of at most
 * TILES_VECTOR_ROWS. */
static inline void tiles_sums_vector(float *c, const uint16_t *a, TilesStride stride, const uint16_t *b, int steps,
                                     int all, int rows, const char *next, int ahead) {
    switch (all) { /* 1 to TILES_FEW */
#define ROWS(n)                                                                                                        \
    case n: tiles_vector_few(n, c, (const char *)a, stride, b, steps); return;
        CPU_CASES_6(ROWS)
#undef ROWS
    }
    const int groups = (rows + TILES_VECTOR_ROWS - 1) / TILES_VECTOR_ROWS, lines = (ahead + groups - 1) / groups;
    for (int first = 0, group = 0; group < groups; group++) {
        const int r = (rows - first + groups - group - 1) / (groups - group);
        float *to = c + TILES_BLOCK * first;
        const char *from = (const char *)a + stride.row * (size_t)first;
        switch (r) {
#define ROWS(n)                                                                                                        \
    case n: tiles_vector_rows(n, to, from, stride, b, steps, next, lines); break;
            CPU_CASES_12(ROWS)
#undef ROWS
        }
        first += r;
        next += (size_t)(lines * steps) * 64;
    }
}

/* Blocks of the depth whose sums are made together from block `first` on: equal pieces of a part. They depend on the depth
 * alone, and so does the rounding of its sums. */
TILES_INLINE int tiles_chunk(const TilesPlan *plan, int steps, int first) {
    const int part = first / plan->part * plan->part, n = tiles_least(plan->part, steps - part);
    const int chunks = (n + TILES_STEPS - 1) / TILES_STEPS, chunk = (n + chunks - 1) / chunks;
    return tiles_least(chunk, part + n - first);
}

/* Strips strip0 .. strip1 - 1 by panels panel0 .. panel1 - 1. sums: the thread's scratch memory. */
TILES_INLINE void tiles_unit(const bool amx, const TilesProduct *p, TilesEpilogue epilogue, const TilesPlan *plan,
                             int unit, float *sums) {
    const int steps = (int)tiles_blocks(p->depth), group = unit % plan->groups;
    const int strip0 = unit / plan->groups * plan->block;
    const int strip1 = tiles_least(strip0 + plan->block, (int)tiles_blocks(p->rows));
    const int panel0 = group * plan->group, panel1 = tiles_least(panel0 + plan->group, (int)tiles_blocks(p->cols));
    const int strips = strip1 - strip0, ahead = (TILES_BLOCK + strips - 1) / strips;
    const int soon = unit + omp_get_num_threads();
    const int later = soon < plan->blocks * plan->groups ? soon % plan->groups * plan->group : -1;
    const TilesStride packed = {2 * TILES_BLOCK, 2 * TILES_BLOCK_SIZE}, plain = {2 * p->lda, 2 * TILES_BLOCK};
    float fresh[2][TILES_BLOCK_SIZE] __attribute__((aligned(64)));
    TilesPending q = {0};
    int turn = 0;
    for (int pass = 0; pass < steps; pass += plan->pass)
        for (int panel = panel0; panel < panel1; panel++) {
            const int end = tiles_least(pass + plan->pass, steps);
            const int following = panel + 1 < panel1 ? panel + 1 : later, fetched = following < 0 ? panel : following;
            for (int first = pass, n; first < end; first += n) {
                n = tiles_chunk(plan, steps, first);
                const uint16_t *b = p->b + ((size_t)panel * (size_t)steps + (size_t)first) * TILES_BLOCK_SIZE;
                const char *next = (const char *)(b + (ptrdiff_t)(fetched - panel) * steps * TILES_BLOCK_SIZE);
                for (int i = 0; i < strips; i++) {
                    const uint16_t *a =
                        p->lda ? p->a + (size_t)((strip0 + i) * TILES_BLOCK) * p->lda + (size_t)(first * TILES_BLOCK)
                               : p->a + ((size_t)(strip0 + i) * (size_t)steps + (size_t)first) * TILES_BLOCK_SIZE;
                    const int slot = (plan->pass < steps ? (panel - panel0) * plan->block : 0) + i;
                    float *sum = sums + (size_t)slot * TILES_BLOCK_SIZE;
                    const int row = (strip0 + i) * TILES_BLOCK, column = panel * TILES_BLOCK;
                    const bool begin = first == 0, last = first + n == steps;
                    float *c = begin && !last ? sum : fresh[turn];
                    const int more = following < 0 ? 0 : ahead;
                    if (amx) tiles_sums(c, a, b, n, p, epilogue, &q, group, next, more, row, column, last);
                    else {
                        tiles_finish(p, epilogue, &q, q.rows, group);
                        tiles_sums_vector(c, a, p->lda ? plain : packed, b, n, p->rows,
                                          tiles_least(TILES_BLOCK, p->rows - row), next, more);
                    }
                    next += (size_t)(ahead * n) * 64;
                    q.rows = 0;
                    q.done = 0;
                    if (begin && !last) continue;
                    turn ^= 1;
                    q = (TilesPending){.c = c,
                                       .sum = begin ? NULL : sum,
                                       .last = last,
                                       .row = row,
                                       .column = column,
                                       .rows = last ? tiles_least(TILES_BLOCK, p->rows - row) : TILES_BLOCK,
                                       .columns = tiles_least(TILES_BLOCK, p->cols - column)};
                }
            }
        }
    tiles_finish(p, epilogue, &q, q.rows, group);
}

/* TILES_HEAD_GRADIENT of what was kept: strip `strip` of a product of p->rows rows and p->cols tokens. */
static inline void tiles_head_strip(const TilesProduct *p, int strip) {
    const TilesHead *h = p->head;
    const int row = strip * TILES_BLOCK, rows = tiles_least(TILES_BLOCK, p->rows - row);
    const size_t steps = tiles_blocks(p->cols);
    for (int column = 0; column < p->cols; column += TILES_BLOCK) {
        const int token = h->first + column;
        const uint16_t *e = tiles_kept(h, row, token);
        uint16_t *to = h->gradient + ((size_t)strip * steps + (size_t)(column / TILES_BLOCK)) * TILES_BLOCK_SIZE;
        for (int i = 0; i < rows; i++, e += TILES_BLOCK, to += TILES_BLOCK) {
            const int hit = h->target[row + i] - token;
            const __m512i both = _mm512_load_si512(e);
            const __m512 x = tiles_head_kept(h, row + i, tiles_widen_low(both), hit);
            const __m512 y = tiles_head_kept(h, row + i, tiles_widen_high(both), hit - 16);
            _mm512_store_si512(to, tiles_round(x, y));
        }
    }
}

#define TILES_TEAM(name, amx, epilogue)                                                                                \
    static inline void name(const TilesProduct *p, const TilesPlan *plan) {                                            \
        float *sums = p->sums + (size_t)omp_get_thread_num() * tiles_sums_count(1);                                    \
        if (amx) tiles_configure();                                                                                    \
        _Pragma("omp for schedule(dynamic, 1)") for (int unit = 0; unit < plan->blocks * plan->groups; unit++)         \
            tiles_unit(amx, p, epilogue, plan, unit, sums);                                                            \
        if (amx) _tile_release();                                                                                      \
    }
TILES_TEAM(tiles_team_store, true, TILES_STORE)
TILES_TEAM(tiles_team_add, true, TILES_ADD)
TILES_TEAM(tiles_team_gelu, true, TILES_GELU)
TILES_TEAM(tiles_team_activation, true, TILES_ACTIVATION)
TILES_TEAM(tiles_team_statistics, true, TILES_STATISTICS)
TILES_TEAM(tiles_team_head_gradient, true, TILES_HEAD_GRADIENT)
TILES_TEAM(vector_team_store, false, TILES_STORE)
TILES_TEAM(vector_team_add, false, TILES_ADD)
TILES_TEAM(vector_team_gelu, false, TILES_GELU)
TILES_TEAM(vector_team_activation, false, TILES_ACTIVATION)
TILES_TEAM(vector_team_statistics, false, TILES_STATISTICS)

/* Computes the product; called by all threads of a team, or by one thread outside of parallel regions. */
static inline void tiles_product_team(const TilesProduct *p) {
    if (p->rows <= 0 || p->cols <= 0 || p->depth <= 0) return;
    const TilesPlan plan = tiles_plan(p, omp_get_num_threads());
    const bool amx = tiles_amx();
    switch (p->epilogue) {
    case TILES_STORE: amx ? tiles_team_store(p, &plan) : vector_team_store(p, &plan); break;
    case TILES_ADD: amx ? tiles_team_add(p, &plan) : vector_team_add(p, &plan); break;
    case TILES_GELU: amx ? tiles_team_gelu(p, &plan) : vector_team_gelu(p, &plan); break;
    case TILES_ACTIVATION: amx ? tiles_team_activation(p, &plan) : vector_team_activation(p, &plan); break;
    case TILES_STATISTICS: amx ? tiles_team_statistics(p, &plan) : vector_team_statistics(p, &plan); break;
    case TILES_HEAD_GRADIENT: tiles_team_head_gradient(p, &plan); break;
    }
}

#endif
#endif
