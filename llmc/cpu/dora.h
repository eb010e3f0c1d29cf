/* dora.h - lengths of adapted rows and their scaling (see Dora in model/backend.h), in float32 for either dtype.
 *
 *     const Dora dora = {.rows = rows, .in = 768, .rank = 16, .parts = 1, .stride = 768};  // and its pointers
 *     cpu_dora_norm(device, &dora);
 */
#ifndef LLMC_CPU_DORA_H
#define LLMC_CPU_DORA_H

#include "../model/backend.h" /* Dora */
#include "act.h"              /* Act, act_get, act_set */
#include "gemm.h"             /* Device, cpu_scratch */
#include "norm.h"             /* COLUMN_BLOCK */
#include "quantized.h"        /* quant_row */

/* Element i of the magnitudes, norms and rows of b: its part, and its channel of the layer's output. */
static inline int dora_channel(const Dora *l, int i, int *part) {
    *part = 0;
    while (i >= l->count[*part]) i -= l->count[(*part)++];
    return l->first[*part] + i;
}

static inline int dora_outputs(const Dora *l) {
    int n = 0;
    for (int p = 0; p < l->parts; p++) n += l->count[p];
    return n;
}

/* norm[i] = |w[c] + scale b[i] a|. Sums of squares are double. */
static inline void cpu_dora_norm(Device *d, const Dora *l) {
    const int in = l->in, outputs = dora_outputs(l);
    const float *a = (const float *)l->a, *b = (const float *)l->b;
    d->panel = (float *)cpu_scratch(d, d->panel, &d->panel_count, (size_t)omp_get_max_threads() * (size_t)in,
                                    sizeof *d->panel);
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)outputs * (size_t)in))
    for (int i = 0; i < outputs; i++) {
        int part;
        const int c = dora_channel(l, i, &part);
        float *row = d->panel + (size_t)omp_get_thread_num() * (size_t)in;
        double sum = 0;
        if (l->matrix.parts) quant_row(&l->matrix, c, in, 0, row, in);
        else memcpy(row, (const float *)l->w + (size_t)c * (size_t)in, (size_t)in * sizeof *row);
        for (int k = 0; k < l->rank; k++) {
            const float factor = l->scale * b[(size_t)i * (size_t)l->rank + (size_t)k];
            const float *from = a + (size_t)(part * l->rank + k) * (size_t)in;
#pragma omp simd
            for (int j = 0; j < in; j++) row[j] += factor * from[j];
        }
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < in; j++) sum += (double)row[j] * (double)row[j];
        ((float *)l->norm)[i] = sum > 0 ? (float)sqrt(sum) : 1.0f;
    }
}

static inline void cpu_dora_forward(Device *d, const Dora *l) {
    (void)d;
    const size_t outputs = (size_t)dora_outputs(l);
    const float *norm = (const float *)l->norm, *magnitude = (const float *)l->magnitude,
                *bias = (const float *)l->bias;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)l->rows * outputs))
    for (int r = 0; r < l->rows; r++)
        for (int part = 0, i = 0; part < l->parts; i += l->count[part++]) {
            Act *out = (Act *)l->out + (size_t)r * (size_t)l->stride + (size_t)l->first[part];
            Act *u = l->u ? (Act *)l->u + (size_t)r * outputs + (size_t)i : NULL;
            for (int j = 0; j < l->count[part]; j++) {
                const float plain = act_get(out[j]) - (bias ? bias[l->first[part] + j] : 0);
                out[j] = act_set(act_get(out[j]) + (magnitude[i + j] / norm[i + j] - 1) * plain);
                if (u) u[j] = act_set(plain);
            }
        }
}

/* A thread has whole columns of the sums. */
static inline void cpu_dora_backward(Device *d, const Dora *l) {
    (void)d;
    const int N = l->rows, outputs = dora_outputs(l);
    const float *norm = (const float *)l->norm, *magnitude = (const float *)l->magnitude;
    const Act *dout = (const Act *)l->dout, *u = (const Act *)l->u;
    Act *dscaled = (Act *)l->dscaled;
    const size_t stride = (size_t)l->stride;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)N * stride))
    for (int r = 0; r < N; r++) {
        const size_t at = (size_t)r * stride;
        memcpy(dscaled + at, dout + at, stride * sizeof *dscaled);
        for (int part = 0, i = 0; part < l->parts; i += l->count[part++])
            for (int j = 0; j < l->count[part]; j++) {
                Act *g = dscaled + at + (size_t)(l->first[part] + j);
                *g = act_set(act_get(*g) * (magnitude[i + j] / norm[i + j]));
            }
    }
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)N * stride))
    for (int block = 0; block < outputs; block += COLUMN_BLOCK) {
        float sum[COLUMN_BLOCK] = {0};
        int channel[COLUMN_BLOCK], part;
        const int n = outputs - block < COLUMN_BLOCK ? outputs - block : COLUMN_BLOCK;
        for (int i = 0; i < n; i++) channel[i] = dora_channel(l, block + i, &part);
        for (int r = 0; r < N; r++)
            for (int i = 0; i < n; i++)
                sum[i] += act_get(dout[(size_t)r * stride + (size_t)channel[i]]) *
                          act_get(u[(size_t)r * (size_t)outputs + (size_t)(block + i)]);
        for (int i = 0; i < n; i++) ((float *)l->dmagnitude)[block + i] += sum[i] / norm[block + i];
    }
}

#endif
