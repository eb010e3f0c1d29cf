/* rotary.h - rotary positions on the CPU, and the norm of queries and keys (see Rotary in backend.h).
 *
 * A row is read and written once: its heads are normalised and rotated while they are in the cache. The gradients of
 * the norm's weights are sums over rows, computed in NORM_PARTS fixed parts that are added in order, so results do not
 * depend on the number of threads.
 */
#ifndef LLMC_CPU_ROTARY_H
#define LLMC_CPU_ROTARY_H

#include "../model/backend.h" /* Rotary, Floats, Ints */
#include "act.h"              /* Act, act_get, act_set */
#include "gemm.h"             /* Device, cpu_scratch */
#include "norm.h"             /* NORM_PARTS */
#include <math.h>
#include <string.h>

static inline void cpu_rotary_table(Device *d, Floats *table_, const Ints *position_, const Floats *frequency_,
                                    float factor, int N, int half, int stride) {
    (void)d;
    const float *frequency = (const float *)frequency_;
    const int32_t *position = (const int32_t *)position_;
#pragma omp parallel for schedule(static) if (cpu_worth(32 * (size_t)N * (size_t)half))
    for (int i = 0; i < N; i++) {
        float *row = (float *)table_ + (size_t)i * (size_t)stride;
        for (int j = 0; j < half; j++) {
            const float angle = (float)position[i] * frequency[j];
            row[j] = cosf(angle) * factor;
            row[half + j] = sinf(angle) * factor;
        }
    }
}

/* Rotates `heads` heads of D channels at x by the angles of a row of the table. sign: 1, or -1 for the inverse. */
static inline void rotary_row(Act *x, const float *table, int heads, int D, int half, float sign) {
    const float *restrict c = table, *restrict s = table + half;
    for (int h = 0; h < heads; h++) {
        Act *restrict low = x + (size_t)h * (size_t)D, *restrict high = low + half;
#pragma omp simd
        for (int j = 0; j < half; j++) {
            const float a = act_get(low[j]), b = act_get(high[j]), sine = sign * s[j];
            low[j] = act_set(a * c[j] - b * sine);
            high[j] = act_set(b * c[j] + a * sine);
        }
    }
}

/* RMSNorm in place of `groups` groups of n channels, which share their weights. rstd: (groups) or NULL. */
static inline void rotary_norm(Act *x, float *rstd, const float *restrict w, int groups, int n, float eps, float one) {
    for (int g = 0; g < groups; g++) {
        Act *restrict y = x + (size_t)g * (size_t)n;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int c = 0; c < n; c++) squares += act_get(y[c]) * act_get(y[c]);
        const float s = 1.0f / sqrtf(squares / (float)n + eps);
#pragma omp simd
        for (int c = 0; c < n; c++) y[c] = act_set(act_get(y[c]) * s * (w[c] + one));
        if (rstd) rstd[g] = s;
    }
}

/* Its backward pass: turns dy, (groups, n), into the gradient of x, and adds to pw, (n), the gradient of w. */
static inline void rotary_norm_backward(Act *dy, float *restrict pw, const Act *x, const float *rstd,
                                        const float *restrict w, int groups, int n, float one) {
    for (int g = 0; g < groups; g++) {
        Act *restrict dx = dy + (size_t)g * (size_t)n;
        const Act *restrict from = x + (size_t)g * (size_t)n;
        const float s = rstd[g];
        float mean = 0;
#pragma omp simd reduction(+ : mean)
        for (int c = 0; c < n; c++) {
            const float normal = act_get(from[c]) * s;
            pw[c] += act_get(dx[c]) * normal;
            dx[c] = act_set(act_get(dx[c]) * (w[c] + one));
            mean += act_get(dx[c]) * normal;
        }
        mean /= (float)n;
#pragma omp simd
        for (int c = 0; c < n; c++) dx[c] = act_set(s * (act_get(dx[c]) - act_get(from[c]) * s * mean));
    }
}

static inline void cpu_rotary_forward(Device *d, const Rotary *r) {
    (void)d;
    const int D = r->head_size, heads = r->heads + r->kv_heads, Q = r->heads * D, K = r->kv_heads * D;
    const int q_groups = r->qw ? Q / r->q_group : 0, k_groups = r->kw ? K / r->k_group : 0;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)r->rows * (size_t)(Q + K)))
    for (int i = 0; i < r->rows; i++) {
        Act *q = (Act *)r->qk + (size_t)i * (size_t)r->stride, *k = q + Q;
        float *rstd = r->rstd ? (float *)r->rstd + (size_t)i * (size_t)(q_groups + k_groups) : NULL;
        if (r->before) memcpy((Act *)r->before + (size_t)i * (size_t)r->before_stride, q, (size_t)(Q + K) * sizeof *q);
        if (r->qw) {
            rotary_norm(q, rstd, (const float *)r->qw, q_groups, r->q_group, r->eps, (float)r->plus_one);
            rotary_norm(k, rstd ? rstd + q_groups : NULL, (const float *)r->kw, k_groups, r->k_group, r->eps,
                        (float)r->plus_one);
        }
        if (r->table)
            rotary_row(q, (const float *)r->table + (size_t)i * (size_t)r->table_stride, heads, D, r->rotated / 2, 1);
    }
}

/* The rows first .. last-1. partial: (q_group + k_group) sums for the gradients of the norm's weights. */
static inline void rotary_backward_rows(const Rotary *r, float *partial, int first, int last) {
    const int D = r->head_size, Q = r->heads * D, K = r->kv_heads * D;
    const int q_groups = r->qw ? Q / r->q_group : 0, k_groups = r->kw ? K / r->k_group : 0;
    for (int i = first; i < last; i++) {
        Act *dq = (Act *)r->qk + (size_t)i * (size_t)r->stride, *dk = dq + Q;
        if (r->table)
            rotary_row(dq, (const float *)r->table + (size_t)i * (size_t)r->table_stride, r->heads + r->kv_heads, D,
                       r->rotated / 2, -1);
        if (!r->qw) continue;
        const Act *q = (const Act *)r->before + (size_t)i * (size_t)r->before_stride, *k = q + Q;
        const float *rstd = (const float *)r->rstd + (size_t)i * (size_t)(q_groups + k_groups);
        rotary_norm_backward(dq, partial, q, rstd, (const float *)r->qw, q_groups, r->q_group, (float)r->plus_one);
        rotary_norm_backward(dk, partial + r->q_group, k, rstd + q_groups, (const float *)r->kw, k_groups, r->k_group,
                             (float)r->plus_one);
    }
}

static inline void cpu_rotary_backward(Device *d, const Rotary *r) {
    const int columns = r->qw ? r->q_group + r->k_group : 1;
    d->partial =
        (float *)cpu_scratch(d, d->partial, &d->partial_count, (size_t)NORM_PARTS * (size_t)columns, sizeof(float));
    float *partial = d->partial; /* (parts, columns) */
#pragma omp parallel if (cpu_worth((size_t)r->rows * (size_t)((r->heads + r->kv_heads) * r->head_size)))
    {
#pragma omp for schedule(static)
        for (int part = 0; part < NORM_PARTS; part++) {
            float *sums = partial + (size_t)part * (size_t)columns;
            memset(sums, 0, (size_t)columns * sizeof *sums);
            rotary_backward_rows(r, sums, (int)((int64_t)r->rows * part / NORM_PARTS),
                                 (int)((int64_t)r->rows * (part + 1) / NORM_PARTS));
        }
#pragma omp for schedule(static)
        for (int c = 0; c < columns; c++) {
            float *to = !r->qw || !r->dqw ? NULL
                        : c < r->q_group  ? (float *)r->dqw + c
                                          : (float *)r->dkw + (c - r->q_group);
            for (int part = 0; part < NORM_PARTS && to; part++)
                *to += partial[(size_t)part * (size_t)columns + (size_t)c];
        }
    }
}

#endif
