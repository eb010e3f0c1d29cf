/* pack.h - functions that fill a Batch (batch.h) with segments, shared prefixes and targets.
 *
 *     Batch b = batch_new(rows, targets, segments);
 *     int p = batch_segment(&b, prompt, n, 0, -1);                 // a prompt, positions from 0
 *     int c = batch_segment(&b, completion, k, n, p);              // a completion of it, positions from n
 *     batch_target(&b, batch_last_row(&b, p), completion[0]);      // the prompt's last row predicts its first token
 *
 * A micro-batch is a budget of tokens: batch_fits() tells whether that many more rows, targets and segments fit.
 */
#ifndef LLMC_MODEL_PACK_H
#define LLMC_MODEL_PACK_H

#include "../base/error.h" /* xcalloc */
#include "batch.h"         /* Batch, Segment */
#include <assert.h>

static inline Batch batch_new(int32_t rows, int32_t targets, int32_t segments) {
    Batch b = {.rows_max = rows, .targets_max = targets, .segments_max = segments};
    b.tokens = (int32_t *)xcalloc((size_t)rows, sizeof(int32_t));
    b.positions = (int32_t *)xcalloc((size_t)rows, sizeof(int32_t));
    b.segment = (Segment *)xcalloc((size_t)segments, sizeof(Segment));
    b.target_row = (int32_t *)xcalloc((size_t)targets, sizeof(int32_t));
    b.target_token = (int32_t *)xcalloc((size_t)targets, sizeof(int32_t));
    return b;
}

static inline void batch_free(Batch *b) {
    free(b->tokens), free(b->positions), free(b->segment), free(b->target_row), free(b->target_token);
    *b = (Batch){0};
}

static inline void batch_clear(Batch *b) { b->rows = b->targets = b->segments = 0; }

static inline bool batch_fits(const Batch *b, int64_t rows, int64_t targets, int64_t segments) {
    return b->rows + rows <= b->rows_max && b->targets + targets <= b->targets_max &&
           b->segments + segments <= b->segments_max;
}

/* Appends a segment of n tokens at positions position, position+1, ... and returns its index. prefix: index of an
 * earlier segment that its rows attend to in full, or -1. The caller has checked batch_fits(). */
static inline int batch_segment(Batch *b, const int32_t *tokens, int32_t n, int32_t position, int prefix) {
    assert(batch_fits(b, n, 0, 1) && prefix < b->segments);
    Segment s = {.start = b->rows, .len = n, .key_start = b->rows};
    if (prefix >= 0) {
        s.prefix_start = b->segment[prefix].start;
        s.prefix_len = b->segment[prefix].len;
    }
    for (int32_t i = 0; i < n; i++) {
        b->tokens[b->rows + i] = tokens[i];
        b->positions[b->rows + i] = position + i;
    }
    b->segment[b->segments] = s;
    b->rows += n;
    return b->segments++;
}

static inline int32_t batch_last_row(const Batch *b, int segment) {
    return b->segment[segment].start + b->segment[segment].len - 1;
}

/* Adds a target: row `row` predicts `token`. */
static inline void batch_target(Batch *b, int32_t row, int32_t token) {
    assert(b->targets < b->targets_max);
    b->target_row[b->targets] = row;
    b->target_token[b->targets++] = token;
}

/* Appends a whole sequence as one segment, with a target for each i >= 1 whose mask[i] is set (all if mask is NULL).
 * Returns the number of targets. */
static inline int32_t batch_sequence(Batch *b, const int32_t *tokens, const uint8_t *mask, int32_t n) {
    const int segment = batch_segment(b, tokens, n, 0, -1);
    const int32_t before = b->targets;
    for (int32_t i = 1; i < n; i++)
        if (!mask || mask[i]) batch_target(b, b->segment[segment].start + i - 1, tokens[i]);
    return b->targets - before;
}

/* Appends a sequence of n >= 2 tokens without its last one, which needs no row, as one segment, with a target for each i >= 1
 * whose mask[i] is set. */
static inline void batch_branch(Batch *b, const int32_t *tokens, const uint8_t *mask, int32_t n) {
    const int segment = batch_segment(b, tokens, n - 1, 0, -1);
    for (int32_t i = 1; i < n; i++)
        if (mask[i]) batch_target(b, b->segment[segment].start + i - 1, tokens[i]);
}

/* Appends a completion of n tokens of the prompt in segment `prompt`, with a target for each token whose mask[i] is set
 * (all if mask is NULL), in order. The last token needs no row of its own. */
static inline void batch_completion(Batch *b, int prompt, const int32_t *tokens, const uint8_t *mask, int32_t n) {
    int32_t row = batch_last_row(b, prompt);
    const int32_t position = b->positions[row] + 1;
    if (n > 0 && (!mask || mask[0])) batch_target(b, row, tokens[0]);
    if (n <= 1) return;
    const int segment = batch_segment(b, tokens, n - 1, position, prompt);
    row = b->segment[segment].start;
    for (int32_t i = 1; i < n; i++)
        if (!mask || mask[i]) batch_target(b, row + i - 1, tokens[i]);
}

#endif
