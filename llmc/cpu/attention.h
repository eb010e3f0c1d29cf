/* attention.h - blocked attention over segments with shared prefixes, for the processor.
 *
 * Includes attention_forward.h and attention_backward.h, which divide their work as attention_strip.h describes, and
 * implements kv_store of backend.h. Acts are arrays of Act (act.h). If that is bfloat16, products of blocks are those of
 * attention_tiles.h (AMX) or product_pairs.h, for heads of a multiple of 16 channels, and otherwise of operands converted to
 * float32. Softmax is computed over blocks of keys, so no array grows with the square of the length. Scratch memory is on the
 * thread's stack, at most 0.4 MB, or 1.2 MB with bfloat16, whose gradients of keys and values are summed as floats in the
 * device's memory.
 *
 * A result does not depend, to the last bit, on the other segments of the batch, on its place in the batch or on the
 * number of threads, because the order of every sum depends on the query's own segment alone.
 *
 * Not supported (assert): heads of more than 1024 channels; in the backward pass, also keys that are not rows of the
 * batch, and a prefix outside the segment's family.
 *
 * To reach the processor's speed, compile with -O3 -ffp-contract=fast (without it, gcc generates no fused multiply-adds
 * with -std=c11).
 */
#ifndef LLMC_CPU_ATTENTION_H
#define LLMC_CPU_ATTENTION_H

#include "../model/backend.h" /* Acts, Device, Ints */
#include "act.h"              /* Act */
#include <stddef.h>
#include <string.h>

/* cache_k[slot[i]] = k[i], cache_v[slot[i]] = v[i] over KC channels. Rows whose slot is -1 are not stored. All other
 * slots must be distinct. */
static inline void cpu_kv_store(Device *device, Acts *cache_k, Acts *cache_v, const Acts *k, const Acts *v, int stride,
                                const Ints *slot, int N, int KC) {
    (void)device;
    const int32_t *to = (const int32_t *)(const void *)slot;
#pragma omp parallel for if ((size_t)N * KC > 65536)
    for (int i = 0; i < N; i++) {
        if (to[i] < 0) continue;
        memcpy((Act *)cache_k + (size_t)to[i] * KC, (const Act *)k + (size_t)i * stride, KC * sizeof(Act));
        memcpy((Act *)cache_v + (size_t)to[i] * KC, (const Act *)v + (size_t)i * stride, KC * sizeof(Act));
    }
}

#endif
