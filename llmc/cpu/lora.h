/* lora.h - low-rank adapters of linear layers, in float32 for either dtype (see Lora in model/backend.h).
 *
 * The products with rank rows or columns are sgemm's, which takes the strides of the parts as they are.
 *
 *     const Lora adapter = {.rows = rows, .in = 768, .rank = 16, .parts = 1, .stride = 768};  // and its pointers
 *     cpu_lora_forward(device, &adapter);
 */
#ifndef LLMC_CPU_LORA_H
#define LLMC_CPU_LORA_H

#include "../model/backend.h" /* Lora */
#include "gemm.h"             /* cpu_wide, DNNL_TRY, cpu_narrow, Device, ... */

static inline void cpu_lora_forward(Device *d, const Lora *l) {
    const int N = l->rows, all = l->parts * l->rank;
    const float *b = (const float *)l->b, *x = cpu_wide(d, 0, l->x, (size_t)N * (size_t)l->in, true);
    float *h = cpu_wide(d, 1, l->h, (size_t)N * (size_t)all, false);
    float *out = cpu_wide(d, 2, l->out, (size_t)N * (size_t)l->stride, true);
    DNNL_TRY(d, dnnl_sgemm('N', 'T', N, all, l->in, 1.0f, x, l->in, (const float *)l->a, l->in, 0.0f, h, all));
    for (int p = 0; p < l->parts; p++) {
        DNNL_TRY(d, dnnl_sgemm('N', 'T', N, l->count[p], l->rank, l->scale, h + p * l->rank, all, b, l->rank, 1.0f,
                               out + l->first[p], l->stride));
        b += (size_t)l->count[p] * (size_t)l->rank;
    }
    cpu_narrow(l->h, h, (size_t)N * (size_t)all);
    cpu_narrow(l->out, out, (size_t)N * (size_t)l->stride);
}

static inline void cpu_lora_backward(Device *d, const Lora *l) {
    const int N = l->rows, all = l->parts * l->rank;
    const float *b = (const float *)l->b, *x = cpu_wide(d, 0, l->x, (size_t)N * (size_t)l->in, true);
    const float *h = cpu_wide(d, 1, l->h, (size_t)N * (size_t)all, true);
    const float *gradient = cpu_wide(d, 2, l->dout, (size_t)N * (size_t)l->stride, true);
    float *dx = cpu_wide(d, 3, l->dx, (size_t)N * (size_t)l->in, true);
    float *db = (float *)l->db;
    d->low = (float *)cpu_scratch(d, d->low, &d->low_count, (size_t)N * (size_t)all, sizeof *d->low);
    for (int p = 0; p < l->parts; p++) {
        const float *dout = gradient + l->first[p];
        const int count = l->count[p];
        DNNL_TRY(d, dnnl_sgemm('N', 'N', N, l->rank, count, l->scale, dout, l->stride, b, l->rank, 0.0f,
                               d->low + p * l->rank, all));
        DNNL_TRY(d, dnnl_sgemm('T', 'N', count, l->rank, N, l->scale, dout, l->stride, h + p * l->rank, all, 1.0f, db,
                               l->rank));
        b += (size_t)count * (size_t)l->rank;
        db += (size_t)count * (size_t)l->rank;
    }
    DNNL_TRY(d, dnnl_sgemm('T', 'N', all, l->in, N, 1.0f, d->low, all, x, l->in, 1.0f, (float *)l->da, l->in));
    DNNL_TRY(d, dnnl_sgemm('N', 'N', N, l->in, all, 1.0f, d->low, all, (const float *)l->a, l->in, 1.0f, dx, l->in));
    cpu_narrow(l->dx, dx, (size_t)N * (size_t)l->in);
}

#endif
