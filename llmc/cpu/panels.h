/* panels.h - products of few rows by packed float32 weights, as in decode.
 *
 *   out[N,M] = x[N,K] w[M,K]^T + b[M]
 *
 * Weights are packed in panels of 64 columns of w^T: [M / 64][K][64], with M rounded up to a multiple of 64 and K to one of 16.
 * This is oneDNN's own layout on AVX-512 (dnnl_BA16a64b), whose products of many rows read the same copy.
 *
 * With few rows, a weight from memory takes part in few operations, so that what counts is when it arrives. A unit of work
 * is 32 columns by up to PANELS_ROWS rows. PANELS_DEPTH of its depth stay in the first-level cache while the rows pass, and
 * during these products the next ones are fetched into the second-level cache, one line for each 6 or 12 rows of operations.
 * Up to PANELS_FEW rows have all sums of a panel in registers instead, and read it once, in the order of its memory.
 *
 * An element's sum adds its terms in the order of the depth, then the bias. It does not depend on the other rows, on its
 * place, or on the number of threads.
 */
#ifndef LLMC_CPU_PANELS_H
#define LLMC_CPU_PANELS_H

#include "product.h" /* CpuVec, CPU_VEC, CPU_CASES_6, CPU_INLINE, ... */
#include <omp.h>
#include <stdbool.h>
#include <stddef.h>

enum {
    PANELS_WIDTH = 64,                     /* columns of a panel */
    PANELS_STEP = 16,                      /* the depth is rounded up to a multiple of it */
    PANELS_UNIT = 32,                      /* columns of a unit of work */
    PANELS_ROWS = 64,                      /* most rows of a unit */
    PANELS_DEPTH = 12 * CPU_VEC,           /* most of the depth that stays in the first-level cache */
    PANELS_LINE = 64 / (int)sizeof(float), /* floats of a cache line */
    PANELS_AHEAD = 512,                    /* floats from a weight to the one that is fetched with it, for few rows */
#ifdef __AVX512F__
    PANELS_FEW = 6,
    PANELS_TILE = 12 /* most rows whose sums of two vectors are in registers together */
#else
    PANELS_FEW = 1,
    PANELS_TILE = 6
#endif
};

#define PANELS_UNROLL _Pragma("GCC unroll 12")

/* The cases of a switch over 1 to PANELS_FEW, and over 1 to PANELS_TILE. */
#ifdef __AVX512F__
#define PANELS_FEW_CASES  CPU_CASES_6
#define PANELS_TILE_CASES CPU_CASES_12
#else
#define PANELS_FEW_CASES(X) X(1)
#define PANELS_TILE_CASES   CPU_CASES_6
#endif

typedef struct PanelsProduct {
    int rows, cols, depth;
    const float *x;    /* (rows, depth) */
    const float *w;    /* packed */
    const float *bias; /* (cols) or NULL */
    float *out;        /* (rows, cols) */
} PanelsProduct;

/* The packed weights from column `column` on, a multiple of PANELS_UNIT. */
static inline const float *panels_at(const PanelsProduct *p, int column) {
    const size_t depth = ((size_t)p->depth + PANELS_STEP - 1) / PANELS_STEP * PANELS_STEP;
    return p->w + (size_t)(column / PANELS_WIDTH) * depth * PANELS_WIDTH + (size_t)(column % PANELS_WIDTH);
}

/* Stores the sums c [rows, width], plus the bias, from a row and a column on, as far as there are columns. */
static inline void panels_store(const PanelsProduct *p, int row, int rows, int column, int width, const float *c) {
    const int columns = p->cols - column < width ? p->cols - column : width;
    for (int i = 0; i < rows; i++, c += width) {
        float *restrict out = p->out + (size_t)(row + i) * (size_t)p->cols + column;
        const float *restrict sum = c;
        const float *restrict bias = p->bias ? p->bias + column : NULL;
        for (int j = 0; j < columns; j++) out[j] = bias ? sum[j] + bias[j] : sum[j];
    }
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* c[r, PANELS_WIDTH] = a[r, depth] times a panel b. */
CPU_INLINE void panels_stream(const int r, int depth, const float *a, const float *b, float *c) {
    enum { VECTORS = PANELS_WIDTH / CPU_VEC };
    CpuVec sum[PANELS_FEW][VECTORS];
    PANELS_UNROLL for (int i = 0; i < r; i++) PANELS_UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = (CpuVec){0};
    for (int k = 0; k < depth; k++, b += PANELS_WIDTH) {
        CpuVec right[VECTORS];
        PANELS_UNROLL for (int j = 0; j < VECTORS; j++) right[j] = *(const CpuVec *)(b + j * CPU_VEC);
        for (int j = 0; j < PANELS_WIDTH; j += PANELS_LINE) __builtin_prefetch(b + PANELS_AHEAD + j, 0, 3);
        PANELS_UNROLL for (int i = 0; i < r; i++) {
            const float x = a[(size_t)i * (size_t)depth + (size_t)k];
            PANELS_UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = sum[i][j] + x * right[j];
        }
    }
    PANELS_UNROLL for (int i = 0; i < r; i++) PANELS_UNROLL for (int j = 0; j < VECTORS; j++) {
        *(CpuVec *)(c + i * PANELS_WIDTH + j * CPU_VEC) = sum[i][j];
    }
}

/* The columns of a panel from `column` on, for up to PANELS_FEW rows. */
static inline void panels_few(const PanelsProduct *p, int column) {
    float c[PANELS_FEW * PANELS_WIDTH] __attribute__((aligned(64)));
    const float *b = panels_at(p, column);
    switch (p->rows) {
#define ROWS(n)                                                                                                        \
    case n: panels_stream(n, p->depth, p->x, b, c); break;
        PANELS_FEW_CASES(ROWS)
#undef ROWS
    }
    panels_store(p, 0, p->rows, column, PANELS_WIDTH, c);
}

/* ---- more rows -------------------------------------------------------------------------------------------------- */

/* c[r, 2 vectors] += a[r, depth] b[depth, 2 vectors]; begin: = instead. Rows of a are lda apart, those of b PANELS_WIDTH and
 * those of c PANELS_UNIT. With each row of b, `ahead` cache lines are fetched, at `next` and every PANELS_WIDTH floats from
 * there. */
CPU_INLINE void panels_tile(const int r, bool begin, int depth, const float *a, size_t lda, const float *b, float *c,
                            const float *next, const int ahead) {
    CpuVec left[PANELS_TILE], right[PANELS_TILE];
    const float *base[3] = {a, a + 4 * lda, a + 8 * lda}; /* addresses of rows take few registers */
    PANELS_UNROLL for (int i = 0; i < r; i++) {
        left[i] = begin ? (CpuVec){0} : *(const CpuVec *)(c + PANELS_UNIT * i);
        right[i] = begin ? (CpuVec){0} : *(const CpuVec *)(c + PANELS_UNIT * i + CPU_VEC);
    }
    for (int k = 0; k < depth; k++, b += PANELS_WIDTH, next += PANELS_WIDTH) {
        const CpuVec b0 = *(const CpuVec *)b, b1 = *(const CpuVec *)(b + CPU_VEC);
        for (int i = 0; i < ahead; i++) __builtin_prefetch(next + PANELS_LINE * i, 0, 2);
        PANELS_UNROLL for (int i = 0; i < r; i++) {
            const float x = base[i / 4][(size_t)(i % 4) * lda + (size_t)k];
            left[i] = left[i] + x * b0;
            right[i] = right[i] + x * b1;
        }
    }
    PANELS_UNROLL for (int i = 0; i < r; i++) {
        *(CpuVec *)(c + PANELS_UNIT * i) = left[i];
        *(CpuVec *)(c + PANELS_UNIT * i + CPU_VEC) = right[i];
    }
}

/* The same for any number of rows and PANELS_UNIT columns, whose two cache lines are fetched in two passes over b, or in the
 * only one. */
static inline void panels_chunk(int rows, bool begin, int depth, const float *a, size_t lda, const float *b, float *c,
                                const float *next) {
    const int groups = (rows + PANELS_TILE - 1) / PANELS_TILE;
    const bool once = groups == 1 && 2 * CPU_VEC == PANELS_UNIT;
    int pass = 0;
    for (int first = 0, group = 0; group < groups; group++) {
        const int r = (rows - first + groups - group - 1) / (groups - group);
        for (int column = 0; column < PANELS_UNIT; column += 2 * CPU_VEC, pass++) {
            const float *from = a + (size_t)first * lda, *by = b + column, *soon = next + pass % 2 * PANELS_LINE;
            float *to = c + first * PANELS_UNIT + column;
            switch (r) {
#define ROWS(n)                                                                                                        \
    case n:                                                                                                            \
        if (once) panels_tile(n, begin, depth, from, lda, by, to, soon, 2);                                            \
        else panels_tile(n, begin, depth, from, lda, by, to, soon, 1);                                                 \
        break;
                PANELS_TILE_CASES(ROWS)
#undef ROWS
            }
        }
        first += r;
    }
}

/* PANELS_UNIT columns from `column` on of `rows` rows from `row` on. following: the weights of the next unit. */
static inline void panels_unit(const PanelsProduct *p, int column, int row, int rows, const float *following) {
    float c[PANELS_ROWS * PANELS_UNIT] __attribute__((aligned(64)));
    const float *b = panels_at(p, column), *a = p->x + (size_t)row * (size_t)p->depth;
    for (int k = 0, depth; k < p->depth; k += depth) {
        depth = p->depth - k < PANELS_DEPTH ? p->depth - k : PANELS_DEPTH;
        const float *next = k + depth < p->depth ? b + (size_t)(k + depth) * PANELS_WIDTH : following;
        panels_chunk(rows, k == 0, depth, a + k, (size_t)p->depth, b + (size_t)k * PANELS_WIDTH, c, next);
    }
    panels_store(p, row, rows, column, PANELS_UNIT, c);
}

/* ---- all -------------------------------------------------------------------------------------------------------- */

/* Computes the product; called by all threads of a team, or by one thread outside of parallel regions. */
static inline void panels_product_team(const PanelsProduct *p) {
    if (p->rows <= PANELS_FEW) {
#pragma omp for schedule(static)
        for (int column = 0; column < p->cols; column += PANELS_WIDTH) panels_few(p, column);
        return;
    }
    const int units = (p->cols + PANELS_UNIT - 1) / PANELS_UNIT, blocks = (p->rows + PANELS_ROWS - 1) / PANELS_ROWS;
#pragma omp for schedule(static)
    for (int i = 0; i < units * blocks; i++) {
        const int block = i % blocks, row = p->rows * block / blocks, rows = p->rows * (block + 1) / blocks - row;
        const int column = i / blocks * PANELS_UNIT, soon = (i + 1) / blocks * PANELS_UNIT;
        panels_unit(p, column, row, rows, panels_at(p, soon < p->cols ? soon : column));
    }
}

#endif
