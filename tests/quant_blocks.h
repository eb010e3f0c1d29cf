/* quant_blocks.h - random blocks of every type of llmc/model/quantized.h, for tests of operations that read them.
 *
 *     float values[512];
 *     void *blocks = quant_random(&random, QUANT_Q6_K, 512, values);      // the caller frees them
 */
#ifndef TESTS_QUANT_BLOCKS_H
#define TESTS_QUANT_BLOCKS_H

#include "../llmc/base/error.h"      /* xmalloc */
#include "../llmc/base/half.h"       /* half_to_f16, half_to_bf16 */
#include "../llmc/base/random.h"     /* Random, random_below, random_normal, random_real */
#include "../llmc/model/backend.h"   /* QUANT_COUNT, QUANT_F16, QUANT_F32, QUANT_Q4_0, ... */
#include "../llmc/model/quantized.h" /* quant_info, quant_bytes, quant_decode */

/* Random integers and random scales of about 0.1, and what they decode to: n values of a size of about 1. */
static inline void *quant_random(Random *r, QuantType type, size_t n, float *values) {
    static const int scales[QUANT_COUNT][2] = {
        [QUANT_Q4_0] = {0, -1}, [QUANT_Q4_1] = {0, 2}, [QUANT_Q5_0] = {0, -1}, [QUANT_Q5_1] = {0, 2},
        [QUANT_Q8_0] = {0, -1}, [QUANT_Q4_K] = {0, 2}, [QUANT_Q5_K] = {0, 2},  [QUANT_Q6_K] = {208, -1}};
    /* of the largest integers times the largest scales of sub-blocks */
    static const double largest[QUANT_COUNT] = {1, 1, 1, 8, 15, 16, 31, 127, 63 * 15, 63 * 31, 127 * 32};
    const size_t bytes = quant_bytes(type, n), block = quant_info(type)->bytes;
    uint8_t *blocks = (uint8_t *)xmalloc(bytes);
    for (size_t i = 0; i < bytes; i++) blocks[i] = (uint8_t)random_below(r, 256);
    for (size_t i = 0; i < n && quant_info(type)->values == 1; i++) {
        const float x = (float)random_normal(r);
        const uint16_t half = type == QUANT_F16 ? half_to_f16(x) : half_to_bf16(x);
        memcpy(blocks + i * block, type == QUANT_F32 ? (const void *)&x : (const void *)&half, block);
    }
    for (size_t at = 0; at < bytes && quant_info(type)->values > 1; at += block)
        for (int k = 0; k < 2; k++) {
            const uint16_t half = half_to_f16((float)((0.5 + random_real(r)) / largest[type]));
            if (scales[type][k] >= 0) memcpy(blocks + at + (size_t)scales[type][k], &half, sizeof half);
        }
    quant_decode(type, blocks, values, n);
    return blocks;
}

#endif
