/* lora.h - low-rank adapters of linear layers (see Lora in model/backend.h): in float32, or by pairs of bfloat16
 * (lora_pairs.h) if activations are bfloat16 and the processor has AVX512-BF16 without AMX.
 *
 * A large product would spend its time on packing and on memory here: rank is small, and the other dimensions are not.
 * These products are made of blocks that stay in the caches (product.h), in one pass over the activations: a thread takes
 * LORA_ROWS rows from x to h to out and, in the backward pass, from dout to dh to dx. For the gradients of the adapters a
 * thread owns LORA_STRIP channels and adds all rows in order, so that results do not depend on the number of threads.
 *
 *     const Lora adapter = {.rows = rows, .in = 768, .rank = 16, .parts = 1, .stride = 768};  // and its pointers
 *     cpu_lora_forward(device, &adapter);
 */
#ifndef LLMC_CPU_LORA_H
#define LLMC_CPU_LORA_H

#include "../model/backend.h" /* Lora */
#include "act.h"              /* Act, ACT_HALF, act_floats, act_get, ... */
#include "gemm.h"             /* Device, cpu_scratch */
#include "lora_pairs.h"       /* LORA_STRIP, LORA_DEPTH, LORA_ROWS, lora_pairs_own_most, ... */
#include "product.h"          /* cpu_product_add, CPU_MR, cpu_product_set */
#include "tiles_product.h"    /* tiles_least */

enum {
    LORA_COLUMNS = 512, /* channels of a block */
    LORA_BUFFER = LORA_ROWS * LORA_COLUMNS > LORA_DEPTH *LORA_STRIP ? LORA_ROWS *LORA_COLUMNS : LORA_DEPTH *LORA_STRIP
};

/* A block of activations as floats, `ld` apart: the activations themselves, or a copy in `buffer`. */
typedef struct LoraBlock {
    float *at;
    size_t ld;
} LoraBlock;

static inline LoraBlock lora_open(float *buffer, const Act *x, size_t stride, int rows, int columns) {
    if (!ACT_HALF) return (LoraBlock){(float *)(uintptr_t)x, stride};
    for (int i = 0; i < rows; i++) act_floats(buffer + i * columns, x + (size_t)i * stride, (size_t)columns);
    return (LoraBlock){buffer, (size_t)columns};
}

/* Takes the results in a block back to the activations. */
static inline void lora_close(const LoraBlock *b, Act *x, size_t stride, int rows, int columns) {
#ifdef CPU_HALF
    for (int i = 0; i < rows; i++) act_store(x + (size_t)i * stride, b->at + (size_t)i * b->ld, (size_t)columns);
#else
    (void)b, (void)x, (void)stride, (void)rows, (void)columns;
#endif
}

/* to[column][row] = from[row][column], by the threads of a team */
static inline void lora_transpose_team(float *to, const float *from, int rows, int columns) {
    enum { BLOCK = 64 };
#pragma omp for schedule(static) nowait
    for (int first = 0; first < columns; first += BLOCK) {
        const int end = columns - first < BLOCK ? columns : first + BLOCK;
        for (int r = 0; r < rows; r++)
            for (int c = first; c < end; c++)
                to[(size_t)c * (size_t)rows + (size_t)r] = from[(size_t)r * (size_t)columns + (size_t)c];
    }
}

/* The rows of a thread's block: at most LORA_ROWS, and no more than leave work for all threads. */
static inline int lora_block_rows(int N) {
    const int share = (N + omp_get_max_threads() - 1) / omp_get_max_threads();
    return tiles_least(LORA_ROWS, (share + CPU_MR - 1) / CPU_MR * CPU_MR);
}

static inline int lora_outputs(const Lora *l) {
    int n = 0;
    for (int p = 0; p < l->parts; p++) n += l->count[p];
    return n;
}

/* The wider side of the layer: its inputs, or the outputs of its adapters. */
static inline int lora_wider_side(const Lora *l) {
    const int outputs = lora_outputs(l);
    return l->in > outputs ? l->in : outputs;
}

/* The most floats that adapters of at most `all` inner channels need for layers of at most `widest` channels. */
static inline size_t lora_scratch_most(int rows, int all, int widest) {
    const size_t N = (size_t)rows, threads = (size_t)omp_get_max_threads();
    const size_t forward = N + 2 * (size_t)widest, backward = 2 * N + threads * LORA_STRIP;
    const size_t floats = (forward > backward ? forward : backward) * (size_t)all + threads * LORA_BUFFER;
    const size_t pairs = lora_pairs_shared_most(rows, all, widest) + threads * lora_pairs_own_most(all);
    return ACT_HALF && pairs > floats ? pairs : floats;
}

/* Memory that the threads share, then `own` floats for each thread. */
static inline float *lora_scratch(Device *d, size_t shared, size_t own) {
    const size_t threads = (size_t)omp_get_max_threads();
    return d->low = (float *)cpu_scratch(d, d->low, &d->low_count, shared + threads * own, sizeof *d->low);
}

/* h and out of `rows` rows from row `first` on. at: a^T (in, all); bt: b_p^T (rank, count of p), one part after another;
 * h: (N, all), which gets scale x a^T */
static inline void lora_forward_rows(const Lora *l, const float *at, const float *bt, float *h, float *buffer,
                                     int first, int rows) {
    const int all = l->parts * l->rank;
    const size_t in = (size_t)l->in, stride = (size_t)l->stride, i = (size_t)first * (size_t)all;
    const Act *x = (const Act *)l->x + (size_t)first * in;
    h += i;
    for (int k = 0; k < l->in; k += LORA_COLUMNS) {
        const int depth = tiles_least(LORA_COLUMNS, l->in - k);
        const LoraBlock left = lora_open(buffer, x + k, in, rows, depth);
        const float *right = at + (size_t)k * (size_t)all;
        if (k) cpu_product_add(rows, all, depth, left.at, left.ld, 1, right, (size_t)all, h, (size_t)all);
        else cpu_product_set(rows, all, depth, left.at, left.ld, 1, right, (size_t)all, h, (size_t)all);
    }
    for (int j = 0; j < rows * all; j++) {
        ((Act *)l->h)[i + (size_t)j] = act_set(h[j]);
        h[j] *= l->scale;
    }
    for (int p = 0; p < l->parts; bt += (size_t)l->count[p] * (size_t)l->rank, p++)
        for (int j = 0; j < l->count[p]; j += LORA_COLUMNS) {
            const int width = tiles_least(LORA_COLUMNS, l->count[p] - j);
            Act *to = (Act *)l->out + (size_t)first * stride + (size_t)(l->first[p] + j);
            const LoraBlock out = lora_open(buffer, to, stride, rows, width);
            cpu_product_add(rows, width, l->rank, h + p * l->rank, (size_t)all, 1, bt + j, (size_t)l->count[p], out.at,
                            out.ld);
            lora_close(&out, to, stride, rows, width);
        }
}

static inline void cpu_lora_forward(Device *d, const Lora *l) {
    const int N = l->rows, all = l->parts * l->rank, block = lora_block_rows(N), outputs = lora_outputs(l);
    const size_t in = (size_t)l->in, rank = (size_t)l->rank;
#ifdef LORA_PAIRS
    if (lora_paired(l)) {
        const size_t own = lora_pairs_own_most(all);
        float *scratch = lora_scratch(d, lora_pairs_shared_most(N, all, lora_wider_side(l)), own);
#pragma omp parallel if (cpu_worth((size_t)N * in))
        lora_pairs_forward_team(l, scratch, own, block, outputs);
        return;
    }
#endif
    float *h = lora_scratch(d, ((size_t)N + in) * (size_t)all + (size_t)outputs * rank, LORA_BUFFER);
    float *at = h + (size_t)N * (size_t)all, *bt = at + in * (size_t)all, *buffers = bt + (size_t)outputs * rank;
#pragma omp parallel if (cpu_worth((size_t)N * in))
    {
        lora_transpose_team(at, (const float *)l->a, all, l->in);
        size_t b = 0;
        for (int p = 0; p < l->parts; b += (size_t)l->count[p++] * rank)
            lora_transpose_team(bt + b, (const float *)l->b + b, l->count[p], l->rank);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int first = 0; first < N; first += block)
            lora_forward_rows(l, at, bt, h, buffers + (size_t)omp_get_thread_num() * LORA_BUFFER, first,
                              tiles_least(block, N - first));
    }
}

/* low = dh and dx of `rows` rows from row `first` on; h: these rows as floats */
static inline void lora_backward_rows(const Lora *l, float *low, float *h, float *buffer, int first, int rows) {
    const int all = l->parts * l->rank;
    const size_t in = (size_t)l->in, stride = (size_t)l->stride, i = (size_t)first * (size_t)all;
    const float *b = (const float *)l->b;
    low += i;
    for (int j = 0; j < rows * all; j++) h[i + (size_t)j] = act_get(((const Act *)l->h)[i + (size_t)j]);
    for (int p = 0; p < l->parts; b += (size_t)l->count[p] * (size_t)l->rank, p++)
        for (int k = 0; k < l->count[p]; k += LORA_COLUMNS) {
            const int depth = tiles_least(LORA_COLUMNS, l->count[p] - k);
            const Act *from = (const Act *)l->dout + (size_t)first * stride + (size_t)(l->first[p] + k);
            const LoraBlock left = lora_open(buffer, from, stride, rows, depth);
            const float *right = b + (size_t)k * (size_t)l->rank;
            float *sum = low + p * l->rank;
            if (k) cpu_product_add(rows, l->rank, depth, left.at, left.ld, 1, right, (size_t)l->rank, sum, (size_t)all);
            else cpu_product_set(rows, l->rank, depth, left.at, left.ld, 1, right, (size_t)l->rank, sum, (size_t)all);
        }
    for (int j = 0; j < rows * all; j++) low[j] *= l->scale;
    for (int k = 0; k < l->in; k += LORA_COLUMNS) {
        const int width = tiles_least(LORA_COLUMNS, l->in - k);
        Act *to = (Act *)l->dx + (size_t)first * in + k;
        const LoraBlock dx = lora_open(buffer, to, in, rows, width);
        cpu_product_add(rows, width, all, low, (size_t)all, 1, (const float *)l->a + k, in, dx.at, dx.ld);
        lora_close(&dx, to, in, rows, width);
    }
}

/* sums[m, width] += left[N, m]^T x[N, width]; rows of left are `all` apart, rows of x `stride`, rows of sums ld */
static inline void lora_add_rows(int N, int m, int width, const float *left, int all, const Act *x, size_t stride,
                                 float *sums, size_t ld, float *buffer) {
    for (int n = 0; n < N; n += LORA_DEPTH) {
        const int rows = tiles_least(LORA_DEPTH, N - n);
        const LoraBlock right = lora_open(buffer, x + (size_t)n * stride, stride, rows, width);
        cpu_product_add(m, width, rows, left + (size_t)n * (size_t)all, 1, (size_t)all, right.at, right.ld, sums, ld);
    }
}

/* db of `width` channels of part p from channel j on. index: rows of b before the part */
static inline void lora_backward_b(const Lora *l, const float *h, int p, int index, int j, int width, float *buffer) {
    const size_t rank = (size_t)l->rank;
    float *sums = buffer + LORA_DEPTH * LORA_STRIP, *db = (float *)l->db + (size_t)(index + j) * rank;
    memset(sums, 0, rank * (size_t)width * sizeof *sums);
    lora_add_rows(l->rows, l->rank, width, h + p * l->rank, l->parts * l->rank, (const Act *)l->dout + l->first[p] + j,
                  (size_t)l->stride, sums, (size_t)width, buffer);
    for (int c = 0; c < width; c++)
        for (size_t r = 0; r < rank; r++) db[(size_t)c * rank + r] += l->scale * sums[r * (size_t)width + (size_t)c];
}

static inline void cpu_lora_backward(Device *d, const Lora *l) {
    const int N = l->rows, all = l->parts * l->rank, block = lora_block_rows(N);
    const size_t inner = (size_t)N * (size_t)all, sums = (size_t)l->rank * LORA_STRIP, own = LORA_BUFFER + sums;
#ifdef LORA_PAIRS
    if (lora_paired(l)) {
        const size_t pairs = lora_pairs_own_most(all);
        float *scratch = lora_scratch(d, lora_pairs_shared_most(N, all, lora_wider_side(l)), pairs);
#pragma omp parallel if (cpu_worth((size_t)N * (size_t)l->in))
        lora_pairs_backward_team(l, scratch, pairs, block, lora_outputs(l));
        return;
    }
#endif
    float *low = lora_scratch(d, 2 * inner, own), *h = low + inner, *buffers = h + inner;
#pragma omp parallel if (cpu_worth((size_t)N * (size_t)l->in))
    {
        float *buffer = buffers + (size_t)omp_get_thread_num() * own;
#pragma omp for schedule(static)
        for (int first = 0; first < N; first += block)
            lora_backward_rows(l, low, h, buffer, first, tiles_least(block, N - first));
        for (int p = 0, index = 0; p < l->parts; index += l->count[p++])
#pragma omp for schedule(static) nowait
            for (int j = 0; j < l->count[p]; j += LORA_STRIP)
                lora_backward_b(l, h, p, index, j, tiles_least(LORA_STRIP, l->count[p] - j), buffer);
#pragma omp for schedule(static)
        for (int k = 0; k < l->in; k += LORA_STRIP)
            lora_add_rows(N, all, tiles_least(LORA_STRIP, l->in - k), low, all, (const Act *)l->x + k, (size_t)l->in,
                          (float *)l->da + k, (size_t)l->in, buffer);
    }
}

#endif
