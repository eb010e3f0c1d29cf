/* head_tiles.h - the language-model head in bfloat16, without logits of all rows in memory.
 *
 * The tokens are divided into blocks of HEAD_BLOCK. A first pass computes the logits of each block and keeps four
 * statistics of them; a second pass computes the logits again, turns them, while they are in registers, into their
 * gradient in bfloat16, and multiplies that by the block of the output matrix and by h. On AMX, computing the logits twice
 * is a third more arithmetic, and saves writing and reading them. Without AMX arithmetic is dearer: if a gradient is
 * wanted, the first pass keeps e^y of each logit, rounded to bfloat16 as the gradient is, of fewer rows at a time.
 *
 * y is the distance to a reference near the row's maximum: the maximum of the first 32 tokens. The few rows whose maximum is
 * so far above it that a sum of e^y could overflow get their maximum as reference, in a second attempt.
 *
 * The rows of a quantised output matrix are decoded when a block needs them.
 *
 * Requesting a gradient changes no value, and no result depends on the number of threads.
 */
#ifndef LLMC_CPU_HEAD_TILES_H
#define LLMC_CPU_HEAD_TILES_H

#include "../model/backend.h" /* Head, Acts */
#include "act.h"              /* ACT_HALF, Act */
#include "gemm.h"             /* cpu_tiles_product, Device, cpu_tiles_pack, cpu_narrow, ... */
#include "quantized.h"        /* quant_rows */
#include "tiles.h"            /* TILES_BLOCK, tiles_count, tiles_blocks, TILES_BLOCK_SIZE, ... */
#include "tiles_product.h"    /* TILES_HEAD_STATISTICS, TILES_HEAD_GROUPS, TilesHead, TilesProduct, ... */
#include "vector_math.h"      /* cpu_tanh */
#include <math.h>

#define HEAD_KEPT  ((size_t)26 << 20) /* most numbers that are kept */
#define HEAD_ABOVE 60.0f              /* e^y may reach e^60: a sum over 2^30 tokens is below the largest float */
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
 * block's part of the output matrix in both) and floats (statistics, six numbers for each row, and the sums of dh if
 * activations are bfloat16). */
static inline size_t head_tiles_halves(int rows, int channels, int padded_vocab) {
    const int n = rows < HEAD_TILES_ROWS ? rows : HEAD_TILES_ROWS;
    const int block = padded_vocab < HEAD_BLOCK ? padded_vocab : HEAD_BLOCK;
    return 2 * tiles_count(n, channels) + 2 * tiles_count(n, block) + 2 * tiles_count(block, channels);
}
static inline size_t head_tiles_floats(int rows, int channels) {
    const size_t n = (size_t)(rows < HEAD_TILES_ROWS ? rows : HEAD_TILES_ROWS);
    return n * (TILES_HEAD_GROUPS * TILES_HEAD_STATISTICS + 6 + (ACT_HALF ? (size_t)channels : 0));
}
/* The same for the rows of a block of an output matrix that is quantised. */
static inline size_t head_tiles_decoded(int channels, int padded_vocab) {
    return (size_t)(padded_vocab < HEAD_BLOCK ? padded_vocab : HEAD_BLOCK) * (size_t)channels;
}
/* The same for what is kept, in floats. */
static inline size_t head_tiles_kept(int rows, int padded_vocab) {
    const int most = head_tiles_most(padded_vocab, true);
    return tiles_amx() ? 0 : tiles_count(rows < most ? rows : most, padded_vocab) / 2;
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
            sum += (double)max[16 + i];
            weighted += (double)max[32 + i];
        }
    }
    const double below = ((double)h->reference[r] - (double)row.max) * (double)h->inverse_temperature;
    row.log_sum = (float)(log(sum) + below);
    row.mean = (float)(weighted / sum + below);
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

/* The references: the maxima of the logits of the first tokens. logits: scratch (n, TILES_BLOCK). */
static inline void head_tiles_references(const TilesHead *t, TilesProduct product, const uint16_t *weight, int n,
                                         float *logits, float *reference) {
    const int tokens = tiles_least(TILES_BLOCK, t->vocab);
    product.epilogue = TILES_STORE;
    product.cols = tokens;
    product.b = weight;
    product.out = logits;
    product.ldo = TILES_BLOCK;
    cpu_tiles_product(&product);
    for (int i = 0; i < n; i++) {
        const float *z = logits + (size_t)i * TILES_BLOCK;
        float max = z[0];
        for (int k = 1; k < tokens; k++) max = z[k] > max ? z[k] : max;
        reference[i] = t->cap > 0 ? t->cap * cpu_tanh(max / t->cap) : max;
    }
}

/* Gives the rows whose sums of e^y may have overflowed their maximum as reference. Returns whether there are any. */
static inline bool head_tiles_raise(const TilesHead *t, int n, float *reference) {
    bool raised = false;
#pragma omp parallel for schedule(static) reduction(|| : raised) if (cpu_worth((size_t)n * TILES_HEAD_STATISTICS))
    for (int i = 0; i < n; i++) {
        float max = -INFINITY;
        for (int group = 0; group < TILES_HEAD_GROUPS; group++) {
            const float *m = t->statistics + ((size_t)group * (size_t)n + (size_t)i) * TILES_HEAD_STATISTICS;
            for (int k = 0; k < 16; k++) max = m[k] > max ? m[k] : max;
        }
        if (!((max - reference[i]) * t->inverse_temperature > HEAD_ABOVE)) continue;
        reference[i] = max;
        raised = true;
    }
    return raised;
}

/* Log-probabilities and entropies of `n` rows from `first` on, and what the second pass needs of them. */
static inline void head_tiles_values(const Head *a, TilesHead *t, int first, int n, float *max, float *log_sum,
                                     float *entropy, float *share) {
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)n * TILES_HEAD_GROUPS * TILES_HEAD_STATISTICS))
    for (int i = 0; i < n; i++) {
        const HeadRow row = head_tiles_row(t, n, i);
        max[i] = row.max;
        log_sum[i] = row.log_sum;
        entropy[i] = row.log_sum - row.mean;
        share[i] = expf((t->reference[i] - row.max) * t->inverse_temperature - row.log_sum);
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

/* The gradient of a block's logits, of which e^y was kept. */
static inline void head_tiles_gradient(const TilesProduct *logits) {
    const int strips = (int)tiles_blocks(logits->rows);
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)logits->rows * (size_t)logits->cols))
    for (int strip = 0; strip < strips; strip++) tiles_head_strip(logits, strip);
}

/* Rows first .. first + n - 1. store: dweight is stored instead of added to. */
static inline void head_tiles_rows(Device *d, const Head *a, int first, int n, bool store) {
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
    float *reference = target_logit + n, *share = reference + n;
    TilesHead t = {.inverse_temperature = 1.0f / a->temperature,
                   .cap = a->cap,
                   .vocab = a->vocab,
                   .target = (const int32_t *)a->target + first,
                   .reference = reference,
                   .statistics = d->logits + kept,
                   .kept = kept ? (uint16_t *)(void *)d->logits : NULL,
                   .panels = (int)tiles_blocks(Vp),
                   .target_logit = target_logit,
                   .max = max,
                   .log_sum = log_sum,
                   .entropy = entropy,
                   .logp = (const float *)a->logp + first,
                   .share = share,
                   .gradient = gradient};
    TilesProduct logits = {
        .rows = n, .depth = C, .a = h_rows, .epilogue = TILES_STATISTICS, .head = &t, .sums = gemm_sums(d)};
    cpu_tiles_pack(h_rows, TILES_ROWS, h, ACT_HALF, channels, n, C);
    head_tiles_references(&t, logits,
                          head_tiles_weight(d, a, 0, weight_kept, weight_block, tiles_least(TILES_BLOCK, Vp)), n,
                          t.statistics, reference);
    for (int attempt = 0; attempt < 2; attempt++) {
        head_tiles_clear(t.statistics, statistics);
        for (t.first = 0; t.first < Vp; t.first += block) {
            logits.cols = tiles_least(block, Vp - t.first);
            logits.b = head_tiles_weight(d, a, t.first, weight_kept, weight_block, logits.cols);
            cpu_tiles_product(&logits);
        }
        if (!head_tiles_raise(&t, n, reference)) break;
    }
    head_tiles_values(a, &t, first, n, max, log_sum, entropy, share);
    if (!a->dlogp) return;
    t.dlogp = (const float *)a->dlogp + first;
    t.dentropy = a->dentropy ? (const float *)a->dentropy + first : NULL;
    logits.epilogue = TILES_HEAD_GRADIENT;
    TilesProduct dh = {.rows = n, .cols = C, .a = gradient, .b = weight_turned, .ldo = channels, .sums = d->sums};
    dh.out = ACT_HALF ? share + n : (float *)a->dh + (size_t)first * channels;
    TilesProduct dweight = {.cols = C, .depth = n, .a = turned, .b = h_pairs, .ldo = channels, .sums = d->sums};
    dweight.epilogue = store ? TILES_STORE : TILES_ADD;
    if (a->dweight) cpu_tiles_pack(h_pairs, TILES_PAIRS, h, ACT_HALF, channels, C, n);
    for (t.first = 0; t.first < Vp; t.first += block) {
        const int tokens = tiles_least(block, Vp - t.first);
        const float *weight = head_tiles_floats_of(d, a, t.first, tokens);
        logits.cols = tokens;
        logits.b = weight_kept ? weight_kept + (size_t)t.first * tiles_blocks(C) * TILES_BLOCK : weight_block;
        if (kept || weight_kept) cpu_tiles_pack(weight_turned, TILES_PAIRS, weight, false, channels, C, tokens);
        else cpu_tiles_pack_both(weight_block, weight_turned, weight, tokens, C);
        if (kept) head_tiles_gradient(&logits);
        else cpu_tiles_product(&logits);
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
    const bool store = gemm_stores(d, (const float *)a->dweight);
    for (int first = 0; first < a->rows; first += most)
        head_tiles_rows(d, a, first, tiles_least(most, a->rows - first), store && !first);
}

#endif
#endif
