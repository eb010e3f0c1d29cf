/* panels.h - products of few rows by packed float32 weights, as in decode.
 *
 *   out[N,M] = x[N,K] w[M,K]^T + b[M]
 *
 * Weights are packed in panels of 64 columns of w^T: [M / 64][K][64], with M rounded up to a multiple of 64 and K to one of 16.
 * This is oneDNN's own layout on AVX-512 (dnnl_BA16a64b), whose products of many rows read the same copy.
 *
 * With few rows, a weight from memory takes part in few operations, so that what counts is when it arrives. A unit of work
 * is the 64 columns of a panel, or 32 of them, by up to PANELS_ROWS rows. PANELS_DEPTH of its depth stay in the first-level
 * cache while the rows pass, and during these products the next ones are fetched into the second-level cache, one or two lines
 * with each step of the depth. Whole panels are therefore read in the order of their memory, which the processor's own
 * prefetching follows. Up to PANELS_FEW rows have all sums of a panel in registers instead, and read it once.
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
    PANELS_HALF = 32,                      /* threads divide the columns into multiples of it */
    PANELS_ROWS = 64,                      /* most rows of a unit */
    PANELS_DEPTH = 96,                     /* most of the depth that stays in the first-level cache */
    PANELS_LINE = 64 / (int)sizeof(float), /* floats of a cache line */
    PANELS_AHEAD = 512,                    /* floats from a weight to the one that is fetched with it, for few rows */
    PANELS_TILE = 6,                       /* most rows whose sums of PANELS_VECTORS vectors are in registers */
#ifdef __AVX512F__
    PANELS_VECTORS = 4,
    PANELS_FEW = 6
#else
    PANELS_VECTORS = 2,
    PANELS_FEW = 1
#endif
};

#define PANELS_UNROLL _Pragma("GCC unroll 8")

/* The cases of a switch over 1 to PANELS_FEW. */
#ifdef __AVX512F__
#define PANELS_FEW_CASES CPU_CASES_6
#else
#define PANELS_FEW_CASES(X) X(1)
#endif

typedef struct PanelsProduct {
    int rows, cols, depth;
    const float *x;    /* (rows, depth) */
    const float *w;    /* packed */
    const float *bias; /* (cols) or NULL */
    float *out;        /* (rows, cols) */
} PanelsProduct;

/* The packed weights from column `column` on, a multiple of PANELS_HALF. */
static inline const float *panels_at(const PanelsProduct *p, int column) {
    const size_t depth = ((size_t)p->depth + PANELS_STEP - 1) / PANELS_STEP * PANELS_STEP;
    return p->w + (size_t)(column / PANELS_WIDTH) * depth * PANELS_WIDTH + (size_t)(column % PANELS_WIDTH);
}

/* Stores `width` columns of the sums c, whose rows are PANELS_WIDTH apart, plus the bias, from a row and a column on, as far
 * as there are columns. */
static inline void panels_store(const PanelsProduct *p, int row, int rows, int column, int width, const float *c) {
    const int columns = p->cols - column < width ? p->cols - column : width;
    for (int i = 0; i < rows; i++, c += PANELS_WIDTH) {
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

/* What is fetched meanwhile: `lines` cache lines with each step of the depth, from `next` on; `step` floats from one step's
 * to the next one's. */
typedef struct PanelsFetch {
    const float *next;
    int lines, step;
} PanelsFetch;

/* c[r, vectors] += a[r, depth] b[depth, vectors]; begin: = instead. Rows of a are lda apart, those of b and c PANELS_WIDTH. */
CPU_INLINE void panels_tile(const int r, const int vectors, bool begin, int depth, const float *a, size_t lda,
                            const float *b, float *c, const int lines, PanelsFetch fetch) {
    CpuVec sum[PANELS_TILE][PANELS_VECTORS];
    PANELS_UNROLL for (int i = 0; i < r; i++) PANELS_UNROLL for (int j = 0; j < vectors; j++) {
        sum[i][j] = begin ? (CpuVec){0} : *(const CpuVec *)(c + i * PANELS_WIDTH + j * CPU_VEC);
    }
    for (int k = 0; k < depth; k++, b += PANELS_WIDTH, fetch.next += fetch.step) {
        CpuVec right[PANELS_VECTORS];
        PANELS_UNROLL for (int j = 0; j < vectors; j++) right[j] = *(const CpuVec *)(b + j * CPU_VEC);
        for (int i = 0; i < lines; i++) __builtin_prefetch(fetch.next + PANELS_LINE * i, 0, 2);
        PANELS_UNROLL for (int i = 0; i < r; i++) {
            const float x = a[(size_t)i * lda + (size_t)k];
            PANELS_UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = sum[i][j] + x * right[j];
        }
    }
    PANELS_UNROLL for (int i = 0; i < r; i++) PANELS_UNROLL for (int j = 0; j < vectors; j++) {
        *(CpuVec *)(c + i * PANELS_WIDTH + j * CPU_VEC) = sum[i][j];
    }
}

/* The same for r rows, `lines` being a constant in each case. */
CPU_INLINE void panels_tile_rows(const int vectors, int r, bool begin, int depth, const float *a, size_t lda,
                                 const float *b, float *c, PanelsFetch fetch) {
    switch (r) {
#define ROWS(n)                                                                                                        \
    case n:                                                                                                            \
        if (fetch.lines == 0) panels_tile(n, vectors, begin, depth, a, lda, b, c, 0, fetch);                           \
        else if (fetch.lines == 1) panels_tile(n, vectors, begin, depth, a, lda, b, c, 1, fetch);                      \
        else panels_tile(n, vectors, begin, depth, a, lda, b, c, 2, fetch);                                            \
        break;
        CPU_CASES_6(ROWS)
#undef ROWS
    }
}

/* The same for any number of rows and `width` columns. The width's cache lines of a row of b, 2 or 4, are fetched in the
 * first passes over b: in the order of their memory if they are those of a whole panel. */
static inline void panels_chunk(int rows, int width, bool begin, int depth, const float *a, size_t lda, const float *b,
                                float *c, const float *next) {
    const int groups = (rows + PANELS_TILE - 1) / PANELS_TILE, most = PANELS_VECTORS * CPU_VEC;
    const int passes = groups * ((width + most - 1) / most), lines = width / PANELS_LINE;
    const int each = (lines + passes - 1) / passes;
    const bool whole = width == PANELS_WIDTH;
    for (int first = 0, group = 0, pass = 0; group < groups; group++) {
        const int r = (rows - first + groups - group - 1) / (groups - group);
        for (int column = 0; column < width; column += most, pass++) {
            PanelsFetch fetch = {.lines = pass * each < lines ? each : 0};
            fetch.next = next + pass * each * PANELS_LINE * (whole ? depth : 1);
            fetch.step = whole ? each * PANELS_LINE : PANELS_WIDTH;
            const float *from = a + (size_t)first * lda, *by = b + column;
            float *to = c + first * PANELS_WIDTH + column;
            if (width < most) panels_tile_rows(PANELS_VECTORS / 2, r, begin, depth, from, lda, by, to, fetch);
            else panels_tile_rows(PANELS_VECTORS, r, begin, depth, from, lda, by, to, fetch);
        }
        first += r;
    }
}

/* `width` columns from `column` on of `rows` rows from `row` on. following: the weights of the next unit. */
static inline void panels_unit(const PanelsProduct *p, int column, int width, int row, int rows,
                               const float *following) {
    float c[PANELS_ROWS * PANELS_WIDTH] __attribute__((aligned(64)));
    const float *b = panels_at(p, column), *a = p->x + (size_t)row * (size_t)p->depth;
    for (int k = 0, depth; k < p->depth; k += depth) {
        depth = p->depth - k < PANELS_DEPTH ? p->depth - k : PANELS_DEPTH;
        const float *next = k + depth < p->depth ? b + (size_t)(k + depth) * PANELS_WIDTH : following;
        panels_chunk(rows, width, k == 0, depth, a + k, (size_t)p->depth, b + (size_t)k * PANELS_WIDTH, c, next);
    }
    panels_store(p, row, rows, column, width, c);
}

/* Columns `column` .. last - 1, both multiples of PANELS_HALF, of all rows: whole panels, and halves at the ends. */
static inline void panels_columns(const PanelsProduct *p, int column, int last) {
    const int blocks = (p->rows + PANELS_ROWS - 1) / PANELS_ROWS;
    for (int width; column < last; column += width) {
        width = column % PANELS_WIDTH || last - column < PANELS_WIDTH ? PANELS_HALF : PANELS_WIDTH;
        for (int block = 0; block < blocks; block++) {
            const int row = p->rows * block / blocks, rows = p->rows * (block + 1) / blocks - row;
            const int soon = block + 1 < blocks || column + width >= last ? column : column + width;
            panels_unit(p, column, width, row, rows, panels_at(p, soon));
        }
    }
}

/* ---- all -------------------------------------------------------------------------------------------------------- */

/* Computes the product; called by all threads of a team, or by one thread outside of parallel regions. */
static inline void panels_product_team(const PanelsProduct *p) {
    if (p->rows <= PANELS_FEW) {
#pragma omp for schedule(static)
        for (int column = 0; column < p->cols; column += PANELS_WIDTH) panels_few(p, column);
        return;
    }
    const int halves = (p->cols + PANELS_HALF - 1) / PANELS_HALF, threads = omp_get_num_threads();
#pragma omp for schedule(static, 1)
    for (int i = 0; i < threads; i++)
        panels_columns(p, halves * i / threads * PANELS_HALF, halves * (i + 1) / threads * PANELS_HALF);
}

#endif
