/* batch.h - a packed batch: one sequence of token rows, divided into segments, without padding or a batch dimension.
 *
 * A row attends causally within its own segment and fully to its segment's prefix. With prefix_len = 0 that is packing
 * with document boundaries. With a prefix, the two completions of a preference pair or of a GRPO group share ONE copy
 * of their prompt. Each row has its position in its own sequence.
 *
 *   rows       0 1 2 3 | 4 5 6 | 7 8        (a prompt of 4 tokens, two completions of 3 and 2)
 *   segments   {0,4,0,0}  {4,3,0,4}  {7,2,0,4}
 *   positions  0 1 2 3   4 5 6   4 5
 *
 * A target is a pair (row, token) and requests the log-probability of `token` after `row`. Several targets may share a
 * row: the prompt's last row predicts the first token of every completion. The head is not computed for other rows.
 *
 * A segment with a prefix comes after the segment that contains the prefix and before the next segment without a
 * prefix. A prompt and its completions are therefore contiguous (a "family"), and families are independent of one
 * another.
 *
 * nvcc compiles this header too, so it uses only the common subset of C and C++.
 */
#ifndef LLMC_MODEL_BATCH_H
#define LLMC_MODEL_BATCH_H

#include <stdint.h>

/* Queries are rows start .. start+len-1. Query start+i attends to key rows prefix_start .. prefix_start+prefix_len-1
 * and key_start .. key_start+past+i. In training the keys are the batch's own rows: key_start = start, past = 0. In
 * decode the keys are rows of a KV cache, and `past` of them were stored before this call. */
typedef struct Segment {
    int32_t start, len;
    int32_t prefix_start, prefix_len;
    int32_t key_start, past;
} Segment;

typedef struct Batch {
    int32_t rows, targets, segments;             /* N, R, S in use */
    int32_t rows_max, targets_max, segments_max; /* capacities */
    int32_t *tokens;                             /* (N) */
    int32_t *positions;                          /* (N) */
    Segment *segment;                            /* (S) */
    int32_t *target_row;                         /* (R) row whose output predicts ... */
    int32_t *target_token;                       /* (R) ... this token */
} Batch;

/* Number of query-key pairs in a batch. */
static inline double batch_pairs(const Batch *b) {
    double pairs = 0;
    for (int i = 0; i < b->segments; i++) {
        const Segment *s = &b->segment[i];
        pairs += (double)s->len * (s->prefix_len + s->past) + 0.5 * (double)s->len * (s->len + 1);
    }
    return pairs;
}

#endif
