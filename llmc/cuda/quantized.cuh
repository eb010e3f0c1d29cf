/* quantized.cuh - products with quantised matrices on the GPU (see QuantMatrix in model/backend.h).
 *
 * A matrix is decoded into scratch memory in the storage type of activations, and cuBLASLt multiplies with it; the next
 * matrix overwrites it. With bf16 storage its values are rounded to bf16. One thread decodes one element: neighbours read
 * the same block, which the caches serve.
 *
 *     cuda_quant_forward<bf16>(d, out, x, &matrix, bias, rows, in, columns);
 */
#ifndef LLMC_CUDA_QUANTIZED_CUH
#define LLMC_CUDA_QUANTIZED_CUH

#include "../model/backend.h" /* Weights, Acts, QUANT_Q4_K, QuantMatrix, ... */
#include "common.cuh"         /* Device, CUDA_LAUNCHED, cuda_blocks, cuda_scratch, ... */
#include "elementwise.cuh"    /* ELEMENT_THREADS, FOR_WORDS */
#include "matmul.cuh"         /* cuda_linear_backward, cuda_linear_forward */
#include "ptx.cuh"            /* LAUNCH */

/* Elements and bytes of a block of a type (quant_info() in model/quantized.h). */
struct QuantShape {
    int values, bytes;
};
static inline QuantShape quant_shape(int type) {
    switch (type) {
    case QUANT_F32: return QuantShape{1, 4};
    case QUANT_F16: return QuantShape{1, 2};
    case QUANT_BF16: return QuantShape{1, 2};
    case QUANT_Q4_0: return QuantShape{32, 18};
    case QUANT_Q4_1: return QuantShape{32, 20};
    case QUANT_Q5_0: return QuantShape{32, 22};
    case QUANT_Q5_1: return QuantShape{32, 24};
    case QUANT_Q8_0: return QuantShape{32, 34};
    case QUANT_Q4_K: return QuantShape{256, 144};
    case QUANT_Q5_K: return QuantShape{256, 176};
    default: return QuantShape{256, 210};
    }
}

/* The 16 bits at p, which may be at an odd address. */
__device__ static inline uint16_t quant_word(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

/* The float16 at p. Shifted into a float32, its exponent is 112 too small. */
__device__ static inline float quant_half(const uint8_t *p) {
    const uint32_t h = quant_word(p), size = h & 0x7fff, sign = (h & 0x8000) << 16;
    const float x = size < 0x7c00 ? __uint_as_float(size << 13) * 0x1p112f : __uint_as_float(size << 13 | 0x7f800000);
    return __uint_as_float(__float_as_uint(x) | sign);
}

/* Scale and least value of sub-block j of Q4_K and Q5_K (quant_scales_k() in model/quantized.h). */
__device__ static inline void quant_scale_k(const uint8_t *p, int j, int &s, int &t) {
    if (j < 4) {
        s = p[j] & 63;
        t = p[j + 4] & 63;
    } else {
        s = (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
        t = p[j + 4] >> 4 | p[j] >> 6 << 4;
    }
}

/* Element i of the block at b. */
__device__ static inline float quant_value(int type, const uint8_t *b, int i) {
    const int low = i % 16, shift = i / 16 % 2 * 4; /* of types with 32 elements */
    switch (type) {
    case QUANT_F32: return __uint_as_float(quant_word(b) | (uint32_t)quant_word(b + 2) << 16);
    case QUANT_F16: return quant_half(b);
    case QUANT_BF16: return __uint_as_float((uint32_t)quant_word(b) << 16);
    case QUANT_Q4_0: return quant_half(b) * (float)((b[2 + low] >> shift & 15) - 8);
    case QUANT_Q4_1: return quant_half(b) * (float)(b[4 + low] >> shift & 15) + quant_half(b + 2);
    case QUANT_Q5_0:
        return quant_half(b) * (float)(((b[6 + low] >> shift & 15) | (b[2 + i / 8] >> i % 8 & 1) << 4) - 16);
    case QUANT_Q5_1:
        return quant_half(b) * (float)((b[8 + low] >> shift & 15) | (b[4 + i / 8] >> i % 8 & 1) << 4) +
               quant_half(b + 2);
    case QUANT_Q8_0: return quant_half(b) * (float)(int8_t)b[2 + i];
    case QUANT_Q4_K:
    case QUANT_Q5_K: {
        const int j = i / 32, k = i % 32;
        const uint8_t *q = b + (type == QUANT_Q4_K ? 16 : 48) + 32 * (j / 2);
        const int fifth = type == QUANT_Q4_K ? 0 : (b[16 + k] >> j & 1) << 4;
        int s, t;
        quant_scale_k(b + 4, j, s, t);
        return quant_half(b) * s * (float)((q[k] >> j % 2 * 4 & 15) | fifth) - quant_half(b + 2) * t;
    }
    default: { /* Q6_K */
        const int h = i / 128, j = i / 32 % 4, k = i % 32;
        const int q = (b[64 * h + 32 * (j % 2) + k] >> j / 2 * 4 & 15) | (b[128 + 32 * h + k] >> 2 * j & 3) << 4;
        return quant_half(b + 208) * (float)(int8_t)b[192 + i / 16] * (float)(q - 32);
    }
    }
}

template <typename T>
__global__ void quant_decode_kernel(T *__restrict__ out, const uint8_t *__restrict__ blocks, int type, int values,
                                    int bytes, size_t n) {
    FOR_WORDS(i, n) {
        const uint8_t *block = blocks + i / (size_t)values * (size_t)bytes;
        out[i] = from_float<T>(quant_value(type, block, (int)(i % (size_t)values)));
    }
}

/* Scratch memory of a product, in bytes. elements: of the matrix. */
template <typename T> static inline size_t cuda_quant_scratch(size_t elements) { return elements * sizeof(T); }

/* Decodes a matrix of (OC, IC) into scratch memory. Returns NULL after a failure. */
template <typename T> static const Weights *quant_decoded(Device *d, const QuantMatrix *w, int IC, int OC) {
    const size_t all = (size_t)OC * (size_t)IC;
    T *out = (T *)cuda_scratch(d, cuda_quant_scratch<T>(all), "a decoded matrix"), *at = out;
    for (int part = 0; out && part < w->parts; part++) {
        const QuantShape shape = quant_shape(w->type[part]);
        const size_t n = (size_t)w->rows[part] * (size_t)IC;
        LAUNCH((quant_decode_kernel<T>), cuda_blocks(d, n, ELEMENT_THREADS), ELEMENT_THREADS, 0, d->stream, at,
               (const uint8_t *)w->blocks[part], w->type[part], shape.values, shape.bytes, n);
        CUDA_LAUNCHED(d, "quant_decode", "%zu elements", n);
        at += n;
    }
    return (const Weights *)out;
}

template <typename T>
static void cuda_quant_forward(Device *d, Acts *out, const Acts *x, const QuantMatrix *w, const Weights *b, int N,
                               int IC, int OC) {
    const Weights *matrix = N ? quant_decoded<T>(d, w, IC, OC) : NULL;
    if (matrix) cuda_linear_forward<T>(d, out, x, matrix, b, N, IC, OC);
}

template <typename T>
static void cuda_quant_backward(Device *d, Acts *dx, const Acts *dout, const QuantMatrix *w, int N, int IC, int OC) {
    const Weights *matrix = N ? quant_decoded<T>(d, w, IC, OC) : NULL;
    if (matrix) cuda_linear_backward<T>(d, dx, NULL, NULL, dout, NULL, matrix, N, IC, OC);
}

#endif
