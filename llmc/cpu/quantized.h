/* quantized.h - products with quantised matrices (see QuantMatrix in model/backend.h), in float32 for either dtype.
 *
 * A thread decodes a block of some rows and columns of the matrix into registers or into a buffer that stays in the
 * caches, multiplies with it, and overwrites it: no more of the matrix ever exists as floats.
 *
 *   up to QUANT_FEW rows of x    decode is bound by reading the matrix:  out[n,o] = x[n] . w[o] + b[o]  by
 *                                quantized_rows.h
 *   more rows                    blocks of 64 rows by QUANT_DEPTH columns are decoded, transposed, and multiplied with
 *                                blocks of rows of x by product.h
 *   gradient                     blocks of 64 rows and up to 256 columns, as they are:  dx += dout[:, rows] w
 *
 * Threads share blocks of results, and every sum adds its terms in an order that does not depend on their number.
 *
 * Embeddings are decoded as their rows are read. The head's products are those of any matrix, with logits as floats; in
 * bfloat16 the head of training decodes the rows of a block of tokens at a time (head_tiles.h).
 *
 *     const QuantMatrix matrix = {.parts = 1, .type = {QUANT_Q8_0}, .rows = {768}};        // and its blocks
 *     cpu_quant_forward(device, NULL, NULL, &matrix, NULL, 0, 768, 768);
 */
#ifndef LLMC_CPU_QUANTIZED_H
#define LLMC_CPU_QUANTIZED_H

#include "../model/backend.h"   /* QuantMatrix, Acts, QuantType, Ints, ... */
#include "../model/quantized.h" /* quant_info, quant_bytes */
#include "act.h"                /* Act, act_set */
#include "gemm.h"               /* Device, cpu_wide, cpu_narrow, cpu_scratch */
#include "product.h"            /* cpu_product_add, cpu_transpose_in */
#include "quantized_rows.h"     /* QUANT_FEW, quant_decode_fast, quant_few_rows */

enum { QUANT_DEPTH = 256, QUANT_WIDE = 64, QUANT_ROWS = 256 };
enum { QUANT_BUFFER = 2 * QUANT_WIDE * QUANT_DEPTH }; /* floats of a thread */

/* Decodes elements [column, column + n) of row `row` of the matrix, whose rows have K elements. */
static inline void quant_row(const QuantMatrix *w, int row, int K, int column, float *out, int n) {
    int part = 0;
    while (row >= w->rows[part]) row -= w->rows[part++];
    const QuantType type = (QuantType)w->type[part];
    const size_t at = (size_t)row * (size_t)K + (size_t)column;
    quant_decode_fast(type, (const uint8_t *)w->blocks[part] + quant_bytes(type, at), out, n);
}

/* The buffers of all threads. */
static inline float *quant_buffers(Device *d) {
    const size_t wanted = (size_t)omp_get_max_threads() * QUANT_BUFFER;
    return d->panel = (float *)cpu_scratch(d, d->panel, &d->panel_count, wanted, sizeof *d->panel);
}

/* panel[k][i] = element column + k of row first + i, for `rows` rows and n columns; rows of the panel are QUANT_WIDE
 * long, and those without a row are 0. buffer: QUANT_WIDE rows of QUANT_DEPTH. */
static inline void quant_panel(const QuantMatrix *w, int first, int rows, int IC, int column, int n, float *buffer,
                               float *panel) {
    for (int i = 0; i < QUANT_WIDE; i += 4) {
        const float *source[4];
        for (int k = 0; k < 4; k++) {
            float *row = buffer + (size_t)k * QUANT_DEPTH;
            source[k] = row;
            if (i + k < rows) quant_row(w, first + i + k, IC, column, row, n);
            else memset(row, 0, (size_t)n * sizeof *row);
        }
        cpu_transpose_in(panel + i, QUANT_WIDE, source, n, 1);
    }
}

static inline void quant_many_rows(Device *d, float *out, const float *x, const QuantMatrix *w, const float *b, int N,
                                   int IC, int OC) {
    const int panels = (OC + QUANT_WIDE - 1) / QUANT_WIDE, blocks = (N + QUANT_ROWS - 1) / QUANT_ROWS;
    float *buffers = quant_buffers(d);
#pragma omp parallel for collapse(2) schedule(static)
    for (int block = 0; block < blocks; block++)
        for (int panel = 0; panel < panels; panel++) {
            float *buffer = buffers + (size_t)omp_get_thread_num() * QUANT_BUFFER;
            float *packed = buffer + QUANT_WIDE * QUANT_DEPTH;
            const int o = panel * QUANT_WIDE, wide = OC - o < QUANT_WIDE ? OC - o : QUANT_WIDE;
            const int r = block * QUANT_ROWS, rows = N - r < QUANT_ROWS ? N - r : QUANT_ROWS;
            float *to = out + (size_t)r * (size_t)OC + (size_t)o;
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < wide; j++) to[(size_t)i * (size_t)OC + (size_t)j] = b ? b[o + j] : 0;
            for (int k = 0; k < IC; k += QUANT_DEPTH) {
                const int n = IC - k < QUANT_DEPTH ? IC - k : QUANT_DEPTH;
                quant_panel(w, o, wide, IC, k, n, buffer, packed);
                for (int half = 0; half < n; half += QUANT_DEPTH / 2) /* half a panel fits into the first cache */
                    cpu_product_add(rows, wide, n - half < QUANT_DEPTH / 2 ? n - half : QUANT_DEPTH / 2,
                                    x + (size_t)r * (size_t)IC + (size_t)(k + half), (size_t)IC, 1,
                                    packed + (size_t)half * QUANT_WIDE, QUANT_WIDE, to, (size_t)OC);
            }
        }
}

/* out = x w^T + b for any number of rows; b may be NULL. */
static inline void quant_forward_floats(Device *d, float *out, const Acts *x_, const QuantMatrix *w, const float *b,
                                        int N, int IC, int OC) {
    const float *x = cpu_wide(d, 0, x_, (size_t)N * (size_t)IC, true);
    if (N <= QUANT_FEW) quant_few_rows(out, x, w, b, N, IC, OC);
    else quant_many_rows(d, out, x, w, b, N, IC, OC);
}

static inline void cpu_quant_forward(Device *d, Acts *out_, const Acts *x, const QuantMatrix *w, const Weights *b,
                                     int N, int IC, int OC) {
    float *out = cpu_wide(d, 1, out_, (size_t)N * (size_t)OC, false);
    quant_forward_floats(d, out, x, w, (const float *)b, N, IC, OC);
    cpu_narrow(out_, out, (size_t)N * (size_t)OC);
}

/* Columns of a block of the gradient: whole blocks of every type of the matrix, few enough to share among threads. */
static inline int quant_columns(const QuantMatrix *w) {
    uint32_t most = QUANT_WIDE;
    for (int i = 0; i < w->parts; i++)
        most = quant_info((QuantType)w->type[i])->values > most ? quant_info((QuantType)w->type[i])->values : most;
    return (int)most;
}

/* dx = dout w */
static inline void quant_backward_floats(Device *d, Acts *dx_, const float *dout, const QuantMatrix *w, int N, int IC,
                                         int OC) {
    float *dx = cpu_wide(d, 1, dx_, (size_t)N * (size_t)IC, false);
    const int width = quant_columns(w), panels = (IC + width - 1) / width, blocks = (N + QUANT_ROWS - 1) / QUANT_ROWS;
    float *buffers = quant_buffers(d);
#pragma omp parallel for collapse(2) schedule(static)
    for (int block = 0; block < blocks; block++)
        for (int panel = 0; panel < panels; panel++) {
            float *buffer = buffers + (size_t)omp_get_thread_num() * QUANT_BUFFER;
            const int c = panel * width, wide = IC - c < width ? IC - c : width;
            const int r = block * QUANT_ROWS, rows = N - r < QUANT_ROWS ? N - r : QUANT_ROWS;
            float *to = dx + (size_t)r * (size_t)IC + (size_t)c;
            for (int i = 0; i < rows; i++) memset(to + (size_t)i * (size_t)IC, 0, (size_t)wide * sizeof *to);
            for (int o = 0; o < OC; o += QUANT_WIDE) {
                const int depth = OC - o < QUANT_WIDE ? OC - o : QUANT_WIDE;
                for (int i = 0; i < depth; i++) quant_row(w, o + i, IC, c, buffer + (size_t)i * (size_t)width, wide);
                cpu_product_add(rows, wide, depth, dout + (size_t)r * (size_t)OC + (size_t)o, (size_t)OC, 1, buffer,
                                (size_t)width, to, (size_t)IC);
            }
        }
    cpu_narrow(dx_, dx, (size_t)N * (size_t)IC);
}

static inline void cpu_quant_backward(Device *d, Acts *dx, const Acts *dout, const QuantMatrix *w, int N, int IC,
                                      int OC) {
    quant_backward_floats(d, dx, cpu_wide(d, 0, dout, (size_t)N * (size_t)OC, true), w, N, IC, OC);
}

static inline void cpu_quant_embed_forward(Device *d, Acts *out_, const QuantMatrix *wte, const Weights *wpe_,
                                           const Ints *token_, const Ints *position_, float scale, int N, int C) {
    (void)d;
    Act *out = (Act *)out_;
    const float *wpe = (const float *)wpe_;
    const int32_t *token = (const int32_t *)token_, *position = (const int32_t *)position_;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)N * (size_t)C))
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c += QUANT_DEPTH) {
            const int n = C - c < QUANT_DEPTH ? C - c : QUANT_DEPTH;
            const float *p = wpe ? wpe + (size_t)position[i] * (size_t)C + c : NULL;
            Act *o = out + (size_t)i * (size_t)C + c;
            float t[QUANT_DEPTH];
            quant_row(wte, token[i], C, c, t, n);
#pragma omp simd
            for (int k = 0; k < n; k++) o[k] = act_set(scale * t[k] + (p ? p[k] : 0.0f));
        }
}

/* Decodes rows [first, first + rows) of a matrix whose rows have C elements into memory of the device. */
static inline const float *quant_rows(Device *d, const QuantMatrix *w, int first, int rows, int C) {
    const size_t columns = (size_t)C;
    float *out = (float *)cpu_scratch(d, d->panel, &d->panel_count, (size_t)rows * columns, sizeof *d->panel);
    d->panel = out;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)rows * columns))
    for (int i = 0; i < rows; i++) quant_row(w, first + i, C, 0, out + (size_t)i * columns, C);
    return out;
}

#endif
