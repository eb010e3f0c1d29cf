/* head_tiles.h - the language-model head in bfloat16, without logits of all rows in memory.
 *
 * The tokens are divided into blocks of HEAD_BLOCK. A first pass computes the logits of each block and keeps four
 * statistics of them; a second pass computes the logits again, turns them, while they are in registers, into their
 * gradient in bfloat16, and multiplies that by the block of the output matrix and by h. On AMX, computing the logits twice
 * is a third more arithmetic, and saves writing and reading them in float32 (412 MB for 1024 rows of GPT-2's vocabulary).
 * Without AMX arithmetic is dearer: if a gradient is wanted, the first pass keeps the logits of fewer rows at a time.
 *
 * The rows of a quantised output matrix are decoded when a block needs them.
 *
 * Requesting a gradient changes no value, and no result depends on the number of threads.
 */
#ifndef LLMC_CPU_HEAD_TILES_H
#define LLMC_CPU_HEAD_TILES_H

#include "../model/backend.h" /* Head, Acts */
#include "act.h"              /* ACT_HALF, Act */
#include "gemm.h"             /* Device, cpu_tiles_pack, cpu_tiles_product, cpu_narrow, ... */
#include "quantized.h"        /* quant_rows */
#include "tiles.h"            /* TILES_BLOCK, tiles_count, tiles_blocks, TILES_BLOCK_SIZE, ... */
#include "tiles_product.h"    /* TILES_HEAD_STATISTICS, TILES_HEAD_GROUPS, TilesProduct, TilesHead, ... */
#include <math.h>

#define HEAD_KEPT ((size_t)26 << 20) /* most logits that are kept */
enum { HEAD_BLOCK = 2048, HEAD_TILES_ROWS = 4096 /* rows that are processed at a time */ };

/* The number of rows that are processed at a time, with a gradient or without one. */
static inline int head_tiles_most(int padded_vocab, bool gradient) {
    if (tiles_amx() || !gradient) return HEAD_TILES_ROWS;
    const size_t fit = HEAD_KEPT / TILES_BLOCK_SIZE / tiles_blocks(padded_vocab);
    return fit < 1 ? TILES_BLOCK : fit > HEAD_TILES_ROWS / TILES_BLOCK ? HEAD_TILES_ROWS : (int)fit * TILES_BLOCK;
}

/* Statistics of a row of logits, with y = (z - max) / temperature: the maximum and its token, log sum_v exp(y_v), and
 * sum_v p_v y_v (for the entropy). */
typedef struct HeadRow {
    float max, log_sum, mean;
    int argmax;
} HeadRow;

/* Sizes of the scratch memory for n rows: bfloat16 (h in both forms, the gradient of a block's logits in both, and the
 * block's part of the output matrix in both) and floats (statistics, four numbers for each row, and the sums of dh if
 * activations are bfloat16). */
static inline size_t head_tiles_halves(int rows, int channels, int padded_vocab) {
    const int n = rows < HEAD_TILES_ROWS ? rows : HEAD_TILES_ROWS;
    const int block = padded_vocab < HEAD_BLOCK ? padded_vocab : HEAD_BLOCK;
    return 2 * tiles_count(n, channels) + 2 * tiles_count(n, block) + 2 * tiles_count(block, channels);
}
static inline size_t head_tiles_floats(int rows, int channels) {
    const size_t n = (size_t)(rows < HEAD_TILES_ROWS ? rows : HEAD_TILES_ROWS);
    return n * (TILES_HEAD_GROUPS * TILES_HEAD_STATISTICS + 4 + (ACT_HALF ? (size_t)channels : 0));
}
/* The same for the rows of a block of an output matrix that is quantised. */
static inline size_t head_tiles_decoded(int channels, int padded_vocab) {
    return (size_t)(padded_vocab < HEAD_BLOCK ? padded_vocab : HEAD_BLOCK) * (size_t)channels;
}
/* The same for the logits that are kept. */
static inline size_t head_tiles_kept(int rows, int padded_vocab) {
    const int most = head_tiles_most(padded_vocab, true);
    return tiles_amx() ? 0 : tiles_count(rows < most ? rows : most, padded_vocab);
}

#ifdef CPU_TILES

/* Combines the statistics of row r, in a fixed order. */
static inline HeadRow head_tiles_row(const TilesHead *h, int rows, int r) {
    HeadRow row = {.max = -INFINITY, .argmax = 0};
    for (int group = 0; group < TILES_HEAD_GROUPS; group++) {
        const float *max = h->statistics + ((size_t)group * (size_t)rows + (size_t)r) * TILES_HEAD_STATISTICS;
        for (int i = 0; i < 16; i++) {
            int32_t token;
            memcpy(&token, &max[48 + i], sizeof token);
            if (max[i] > row.max || (max[i] == row.max && token < row.argmax)) {
                row.max = max[i];
                row.argmax = token;
            }
        }
    }
    double sum = 0, weighted = 0;
    for (int group = 0; group < TILES_HEAD_GROUPS; group++) {
        const float *max = h->statistics + ((size_t)group * (size_t)rows + (size_t)r) * TILES_HEAD_STATISTICS;
        for (int i = 0; i < 16; i++) {
            const double s = (double)max[16 + i],
                         y = ((double)max[i] - (double)row.max) * (double)h->inverse_temperature;
            const double shrink = s == 0 ? 0 : exp(y);
            sum += shrink * s;
            weighted += shrink == 0 ? 0 : shrink * ((double)max[32 + i] + y * s);
        }
    }
    row.log_sum = (float)log(sum);
    row.mean = (float)(weighted / sum);
    return row;
}

/* The statistics before the first block. */
static inline void head_tiles_clear(float *statistics, size_t n) {
#pragma omp parallel for schedule(static) if (cpu_worth(n))
    for (size_t i = 0; i < n; i++) statistics[i] = i % TILES_HEAD_STATISTICS < 16 ? -INFINITY : 0;
}

/* Zeros the rows of a packed left operand of n x depth that pad its last strip. */
static inline void head_tiles_pad(uint16_t *packed, int n, int depth) {
    const int used = n % TILES_BLOCK;
    uint16_t *block = packed + (size_t)(n / TILES_BLOCK) * tiles_blocks(depth) * TILES_BLOCK_SIZE;
    for (size_t k = 0; used && k < tiles_blocks(depth); k++, block += TILES_BLOCK_SIZE)
        memset(block + used * TILES_BLOCK, 0, (size_t)((TILES_BLOCK - used) * TILES_BLOCK) * sizeof *block);
}

/* Log-probabilities and entropies of `n` rows from `first` on, and what the second pass needs of them. */
static inline void head_tiles_values(const Head *a, TilesHead *t, int first, int n, float *max, float *log_sum,
                                     float *entropy) {
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)n * TILES_HEAD_GROUPS * TILES_HEAD_STATISTICS))
    for (int i = 0; i < n; i++) {
        const HeadRow row = head_tiles_row(t, n, i);
        max[i] = row.max;
        log_sum[i] = row.log_sum;
        entropy[i] = row.log_sum - row.mean;
        ((float *)a->logp)[first + i] = (t->target_logit[i] - row.max) * t->inverse_temperature - row.log_sum;
        if (a->entropy) ((float *)a->entropy)[first + i] = entropy[i];
        if (a->argmax) ((int32_t *)a->argmax)[first + i] = row.argmax;
    }
}

/* The rows of the output matrix of `tokens` tokens from `first` on, as floats. */
static inline const float *head_tiles_floats_of(Device *d, const Head *a, int first, int tokens) {
    if (a->matrix) return quant_rows(d, a->matrix, first, tokens, a->channels);
    return (const float *)a->weight + (size_t)first * (size_t)a->channels;
}

/* The same packed: of the packed copy, or in `block`. */
static inline const uint16_t *head_tiles_weight(Device *d, const Head *a, int first, const uint16_t *kept,
                                                uint16_t *block, int tokens) {
    const int C = a->channels;
    if (kept) return kept + (size_t)first * tiles_blocks(C) * TILES_BLOCK;
    cpu_tiles_pack(block, TILES_PAIRS_TRANSPOSED, head_tiles_floats_of(d, a, first, tokens), false, (size_t)C, tokens,
                   C);
    return block;
}

/* The gradient of a block's logits that were kept. */
static inline void head_tiles_gradient(const TilesProduct *logits) {
    const int strips = (int)tiles_blocks(logits->rows);
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)logits->rows * (size_t)logits->cols))
    for (int strip = 0; strip < strips; strip++) tiles_head_strip(logits, strip);
}

/* Rows first .. first + n - 1. */
static inline void head_tiles_rows(Device *d, const Head *a, int first, int n) {
    const int C = a->channels, Vp = a->padded_vocab, block = Vp < HEAD_BLOCK ? Vp : HEAD_BLOCK;
    const size_t channels = (size_t)C;
    const Act *h = (const Act *)a->h + (size_t)first * channels;
    const uint16_t *weight_kept = a->matrix ? NULL : gemm_tiles(d, (const float *)a->weight, n, Vp, C);
    uint16_t *h_rows = gemm_half(d, 0, head_tiles_halves(n, C, Vp)), *h_pairs = h_rows + tiles_count(n, C),
             *gradient = h_pairs + tiles_count(n, C);
    uint16_t *turned = gradient + tiles_count(n, block), *weight_turned = turned + tiles_count(n, block),
             *weight_block = weight_turned + tiles_count(block, C);
    const size_t statistics = (size_t)n * TILES_HEAD_GROUPS * TILES_HEAD_STATISTICS;
    const size_t kept = a->dlogp ? head_tiles_kept(n, Vp) : 0;
    const size_t floats = kept + head_tiles_floats(n, C);
    d->logits = (float *)cpu_scratch(d, d->logits, &d->logits_count, floats, sizeof(float));
    float *max = d->logits + kept + statistics, *log_sum = max + n, *entropy = log_sum + n, *target_logit = entropy + n;
    TilesHead t = {.inverse_temperature = 1.0f / a->temperature,
                   .cap = a->cap,
                   .vocab = a->vocab,
                   .target = (const int32_t *)a->target + first,
                   .statistics = d->logits + kept,
                   .logits = kept ? d->logits : NULL,
                   .panels = (int)tiles_blocks(Vp),
                   .target_logit = target_logit,
                   .max = max,
                   .log_sum = log_sum,
                   .entropy = entropy,
                   .gradient = gradient};
    TilesProduct logits = {
        .rows = n, .depth = C, .a = h_rows, .epilogue = TILES_STATISTICS, .head = &t, .sums = gemm_sums(d)};
    head_tiles_clear(t.statistics, statistics);
    cpu_tiles_pack(h_rows, TILES_ROWS, h, ACT_HALF, channels, n, C);
    for (t.first = 0; t.first < Vp; t.first += block) {
        logits.cols = tiles_least(block, Vp - t.first);
        logits.b = head_tiles_weight(d, a, t.first, weight_kept, weight_block, logits.cols);
        cpu_tiles_product(&logits);
    }
    head_tiles_values(a, &t, first, n, max, log_sum, entropy);
    if (!a->dlogp) return;
    t.dlogp = (const float *)a->dlogp + first;
    t.dentropy = a->dentropy ? (const float *)a->dentropy + first : NULL;
    logits.epilogue = TILES_HEAD_GRADIENT;
    TilesProduct dh = {.rows = n, .cols = C, .a = gradient, .b = weight_turned, .ldo = channels, .sums = d->sums};
    dh.out = ACT_HALF ? target_logit + n : (float *)a->dh + (size_t)first * channels;
    TilesProduct dweight = {.cols = C, .depth = n, .a = turned, .b = h_pairs, .ldo = channels, .sums = d->sums};
    dweight.epilogue = TILES_ADD;
    if (a->dweight) cpu_tiles_pack(h_pairs, TILES_PAIRS, h, ACT_HALF, channels, C, n);
    for (t.first = 0; t.first < Vp; t.first += block) {
        const int tokens = tiles_least(block, Vp - t.first);
        logits.cols = tokens;
        if (kept) head_tiles_gradient(&logits);
        else {
            logits.b = head_tiles_weight(d, a, t.first, weight_kept, weight_block, tokens);
            cpu_tiles_product(&logits);
        }
        cpu_tiles_pack(weight_turned, TILES_PAIRS, head_tiles_floats_of(d, a, t.first, tokens), false, channels, C,
                       tokens);
        dh.depth = tokens;
        dh.epilogue = t.first ? TILES_ADD : TILES_STORE;
        cpu_tiles_product(&dh);
        if (!a->dweight) continue;
        head_tiles_pad(gradient, n, tokens);
        cpu_tiles_turn(turned, gradient, n, tokens, false);
        dweight.rows = tokens;
        dweight.out = (float *)a->dweight + (size_t)t.first * channels;
        cpu_tiles_product(&dweight);
    }
    cpu_narrow((Acts *)((Act *)a->dh + (size_t)first * channels), dh.out, (size_t)n * channels);
}

static inline void head_tiles(Device *d, const Head *a) {
    const int most = head_tiles_most(a->padded_vocab, a->dlogp != NULL);
    for (int first = 0; first < a->rows; first += most)
        head_tiles_rows(d, a, first, tiles_least(most, a->rows - first));
}

#endif
#endif
