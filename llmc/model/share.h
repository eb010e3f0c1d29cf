/* share.h - the part of the training state that one of several ranks holds.
 *
 * An array is distributed over the ranks by one rule, share_slice(): every rank gets the same number of elements, a
 * multiple of SHARE_ALIGN, and the last rank also gets the remainder. An array with fewer than SHARE_ALIGN elements per
 * rank belongs to the last rank alone.
 *
 *     size_t first, count;
 *     share_slice(n, rank, ranks, &first, &count);      // this rank owns elements [first, first + count)
 *
 * nvcc compiles this header too, so it uses only the common subset of C and C++.
 */
#ifndef LLMC_MODEL_SHARE_H
#define LLMC_MODEL_SHARE_H

#include <stddef.h>

enum { SHARE_ALIGN = 16 };

/* The part of the training state that this process holds. zero 0: all of it; 1: a slice of the optimizer's state; 2: a
 * slice of the gradients as well (ZeRO: Rajbhandari et al. 2020). */
typedef struct Share {
    int rank, ranks, zero;
} Share;

/* The part of n elements that a rank owns: [*first, *first + *count). */
static inline void share_slice(size_t n, int rank, int ranks, size_t *first, size_t *count) {
    const size_t each = n / (size_t)ranks / SHARE_ALIGN * SHARE_ALIGN;
    *first = each * (size_t)rank;
    *count = rank == ranks - 1 ? n - *first : each;
}

#endif
