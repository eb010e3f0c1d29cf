/* lora.cuh - low-rank adapters of linear layers on the GPU (see Lora in model/backend.h).
 *
 * The products are cuBLASLt's, of matrices whose rows have gaps: the parts of h lie next to each other in a row, as do
 * the parts of the linear layer's output. Each adds to its result within the product. Their sums are
 * float32 in an order that depends on the shape alone; with bf16 storage h and its gradient dh are rounded to bf16.
 *
 *   forward    h = x a^T                            1 product
 *              out[:, part] += scale h_part b^T     1 per part
 *   backward   dh_part = scale dout[:, part] b      1 per part; dh is scratch memory
 *              db += scale dout[:, part]^T h_part   1 per part
 *              da += dh^T x,  dx += dh a            2
 *
 *     cuda_lora_forward<bf16>(d, &adapter);
 */
#ifndef LLMC_CUDA_LORA_CUH
#define LLMC_CUDA_LORA_CUH

#include "../model/backend.h" /* Lora */
#include "common.cuh"         /* Device, cuda_scratch */
#include "matmul.cuh"         /* MatmulStrides, aligned_rows, cuda_matmul_nn, cuda_matmul_nt, ... */

/* Scratch memory of the backward pass, in bytes. all: parts * rank. */
template <typename T> static inline size_t cuda_lora_scratch(int rows, int all) {
    return (size_t)aligned_rows(rows) * (size_t)all * sizeof(T);
}

template <typename T> static void cuda_lora_forward(Device *d, const Lora *l) {
    const int rows = aligned_rows(l->rows), all = l->parts * l->rank;
    const T *b = (const T *)l->b;
    T *h = (T *)l->h;
    cuda_matmul_nt<T, T>(d, h, (const T *)l->x, (const T *)l->a, rows, all, l->in, 1, 0);
    for (int p = 0; p < l->parts; p++) {
        cuda_matmul_nt<T, T>(d, (T *)l->out + l->first[p], h + p * l->rank, b, rows, l->count[p], l->rank, l->scale, 1,
                             MatmulStrides{l->stride, all, 0});
        b += (size_t)l->count[p] * (size_t)l->rank;
    }
}

template <typename T> static void cuda_lora_backward(Device *d, const Lora *l) {
    const int N = l->rows, rows = aligned_rows(N), all = l->parts * l->rank;
    const T *b = (const T *)l->b, *h = (const T *)l->h;
    float *db = (float *)l->db;
    T *dh = (T *)cuda_scratch(d, cuda_lora_scratch<T>(N, all), "gradients of the inner activations of adapters");
    if (!dh) return;
    for (int p = 0; p < l->parts; p++) {
        const T *dout = (const T *)l->dout + l->first[p];
        const int count = l->count[p], at = p * l->rank;
        cuda_matmul_nn<T, T>(d, dh + at, dout, b, rows, l->rank, count, l->scale, 0, MatmulStrides{all, l->stride, 0});
        cuda_matmul_tn<T, float>(d, db, dout, h + at, N, count, l->rank, l->scale, 1, MatmulStrides{0, l->stride, all});
        b += (size_t)count * (size_t)l->rank;
        db += (size_t)count * (size_t)l->rank;
    }
    cuda_matmul_tn<T, float>(d, (float *)l->da, dh, (const T *)l->x, N, all, l->in, 1, 1);
    cuda_matmul_nn<T, T>(d, (T *)l->dx, dh, (const T *)l->a, rows, l->in, all, 1, 1);
}

#endif
