/* norm.h - row-wise operations on the CPU: embedding, layernorm and RMSNorm, residual, GELU and gates, gather and
 * scatter, noise.
 *
 * All are memory-bound: each reads and writes a row once, and operations are fused if that saves a pass. A sum over
 * rows is computed by threads that own columns and add the rows in order, or in NORM_PARTS fixed parts that are added
 * in order. Results therefore do not depend on the number of threads.
 */
#ifndef LLMC_CPU_NORM_H
#define LLMC_CPU_NORM_H

#include "../base/random.h"   /* random_uniform */
#include "../model/backend.h" /* Acts, Ints, Floats, MLP_GEGLU, ... */
#include "act.h"              /* Act, act_get, act_set */
#include "gemm.h"             /* Device, CPU_BLOCK, cpu_scratch */
#include "tiles.h"            /* CPU_TILES */
#include "tiles_activation.h" /* tiles_act_row, tiles_gate_row */
#include "vector_math.h"      /* cpu_exp */

enum { NORM_PARTS = 32, COLUMN_BLOCK = 64 };

static inline void cpu_embed_forward(Device *d, Acts *out_, const Weights *wte_, const Weights *wpe_,
                                     const Ints *token_, const Ints *position_, float scale, int N, int C) {
    (void)d;
    Act *out = (Act *)out_;
    const float *wte = (const float *)wte_, *wpe = (const float *)wpe_;
    const int32_t *token = (const int32_t *)token_, *position = (const int32_t *)position_;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)N * (size_t)C))
    for (int i = 0; i < N; i++) {
        const float *t = wte + (size_t)token[i] * (size_t)C;
        const float *p = wpe ? wpe + (size_t)position[i] * (size_t)C : NULL;
        Act *o = out + (size_t)i * (size_t)C;
#pragma omp simd
        for (int c = 0; c < C; c++) o[c] = act_set(scale * t[c] + (p ? p[c] : 0.0f));
    }
}

/* to[row[i]] += scale from[i], in the order of i. Threads own blocks of columns. */
static inline void cpu_scatter(float *to, const Act *from, const int32_t *row, float scale, int N, int C) {
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)N * (size_t)C))
    for (int block = 0; block < C; block += COLUMN_BLOCK) {
        const int width = C - block < COLUMN_BLOCK ? C - block : COLUMN_BLOCK;
        for (int i = 0; i < N; i++) {
            float *t = to + (size_t)row[i] * (size_t)C + block;
            const Act *f = from + (size_t)i * (size_t)C + block;
#pragma omp simd
            for (int c = 0; c < width; c++) t[c] += scale * act_get(f[c]);
        }
    }
}

static inline void cpu_embed_backward(Device *d, Floats *dwte, Floats *dwpe, const Acts *dout, const Ints *token,
                                      const Ints *position, float scale, int N, int C) {
    (void)d;
    cpu_scatter((float *)dwte, (const Act *)dout, (const int32_t *)token, scale, N, C);
    if (dwpe) cpu_scatter((float *)dwpe, (const Act *)dout, (const int32_t *)position, 1, N, C);
}

static inline void cpu_noise_add(Device *d, Acts *x_, const Floats *scale_, const Ints *record_, const Ints *position_,
                                 int N, int C, uint64_t seed, uint64_t stream) {
    (void)d;
    Act *x = (Act *)x_;
    const float *scale = (const float *)scale_;
    const int32_t *record = (const int32_t *)record_, *position = (const int32_t *)position_;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)N * (size_t)C))
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++) {
            const uint64_t draw = (uint64_t)position[i] * (uint64_t)C + (uint64_t)c;
            Act *at = x + (size_t)i * (size_t)C + (size_t)c;
            *at = act_set(act_get(*at) +
                          scale[i] * (2.0f * random_uniform(seed, stream + (uint64_t)record[i], draw) - 1.0f));
        }
}

/* Normalises, scales and shifts a row of C channels. Writes its mean and rstd. */
static inline void layernorm_row(Act *restrict out, float *mean, float *rstd, const Act *restrict x,
                                 const float *restrict w, const float *restrict b, float eps, int C) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += act_get(x[c]);
    const float m = sum / (float)C;
#pragma omp simd reduction(+ : squares)
    for (int c = 0; c < C; c++) squares += (act_get(x[c]) - m) * (act_get(x[c]) - m);
    const float s = 1.0f / sqrtf(squares / (float)C + eps);
#pragma omp simd
    for (int c = 0; c < C; c++) out[c] = act_set((act_get(x[c]) - m) * s * w[c] + b[c]);
    *mean = m;
    *rstd = s;
}

/* Scales a row by w + one over its root mean square, and adds `add` unless it is NULL. Writes its rstd. */
static inline void rmsnorm_row(Act *out, float *rstd, const Act *restrict x, const float *restrict w, const Act *add,
                               float eps, float one, int C) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int c = 0; c < C; c++) squares += act_get(x[c]) * act_get(x[c]);
    const float s = 1.0f / sqrtf(squares / (float)C + eps);
#pragma omp simd
    for (int c = 0; c < C; c++) out[c] = act_set((add ? act_get(add[c]) : 0.0f) + act_get(x[c]) * s * (w[c] + one));
    *rstd = s;
}

static inline void cpu_norm_forward(Device *d, const Norm *n) {
    (void)d;
    const int N = n->rows, C = n->channels;
    const float *w = (const float *)n->w, *b = (const float *)n->b;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)N * (size_t)C))
    for (int i = 0; i < N; i++) {
        const size_t at = (size_t)i * (size_t)C;
        const Act *x = (const Act *)n->x + at;
        Act *out = (Act *)n->out + at;
        float *rstd = (float *)n->rstd + i;
        if (n->delta) {
            Act *sum = (Act *)n->sum + at;
            const Act *delta = (const Act *)n->delta + at;
#pragma omp simd
            for (int c = 0; c < C; c++) sum[c] = act_set(act_get(x[c]) + act_get(delta[c]));
            x = sum;
        }
        if (n->kind == NORM_RMS)
            rmsnorm_row(out, rstd, x, w, n->add ? (const Act *)n->add + at : NULL, n->eps, (float)n->plus_one, C);
        else layernorm_row(out, (float *)n->mean + i, rstd, x, w, b, n->eps, C);
    }
}

/* The backward pass of one row of layernorm. pw, pb: (C) sums for dw and db. */
static inline void layernorm_row_backward(Act *restrict dx, float *restrict pw, float *restrict pb,
                                          const Act *restrict dout, const Act *restrict x, const float *restrict w,
                                          float m, float s, int C) {
    float g_sum = 0, gn_sum = 0;
#pragma omp simd reduction(+ : g_sum, gn_sum)
    for (int c = 0; c < C; c++) {
        const float n = (act_get(x[c]) - m) * s, g = act_get(dout[c]) * w[c];
        g_sum += g;
        gn_sum += g * n;
        pw[c] += act_get(dout[c]) * n;
        pb[c] += act_get(dout[c]);
    }
    g_sum /= (float)C;
    gn_sum /= (float)C;
#pragma omp simd
    for (int c = 0; c < C; c++) {
        const float n = (act_get(x[c]) - m) * s;
        dx[c] = act_set(act_get(dx[c]) + s * (act_get(dout[c]) * w[c] - g_sum - n * gn_sum));
    }
}

/* The same for RMSNorm. */
static inline void rmsnorm_row_backward(Act *restrict dx, float *restrict pw, const Act *restrict dout,
                                        const Act *restrict x, const float *restrict w, float s, float one, int C) {
    float gn_sum = 0;
#pragma omp simd reduction(+ : gn_sum)
    for (int c = 0; c < C; c++) {
        const float n = act_get(x[c]) * s;
        gn_sum += act_get(dout[c]) * (w[c] + one) * n;
        pw[c] += act_get(dout[c]) * n;
    }
    gn_sum /= (float)C;
#pragma omp simd
    for (int c = 0; c < C; c++)
        dx[c] = act_set(act_get(dx[c]) + s * (act_get(dout[c]) * (w[c] + one) - act_get(x[c]) * s * gn_sum));
}

static inline void cpu_norm_backward(Device *d, const Norm *n) {
    const int N = n->rows, C = n->channels;
    const float *w = (const float *)n->w, *mean = (const float *)n->mean, *rstd = (const float *)n->rstd;
    float *dw = (float *)n->dw, *db = (float *)n->db;
    d->partial = (float *)cpu_scratch(d, d->partial, &d->partial_count, 2u * NORM_PARTS * (size_t)C, sizeof(float));
    float *partial = d->partial; /* (parts, 2, C) */
#pragma omp parallel if (cpu_worth((size_t)N * (size_t)C))
    {
#pragma omp for schedule(static)
        for (int part = 0; part < NORM_PARTS; part++) {
            float *pw = partial + (size_t)part * 2 * (size_t)C, *pb = pw + C;
            memset(pw, 0, 2 * (size_t)C * sizeof *pw);
            const int first = (int)((int64_t)N * part / NORM_PARTS), last = (int)((int64_t)N * (part + 1) / NORM_PARTS);
            for (int i = first; i < last; i++) {
                const size_t at = (size_t)i * (size_t)C;
                const Act *dout = (const Act *)n->dout + at, *x = (const Act *)n->x + at;
                Act *dx = (Act *)n->dx + at;
                if (n->fresh) memset(dx, 0, (size_t)C * sizeof *dx);
                if (n->kind == NORM_RMS) rmsnorm_row_backward(dx, pw, dout, x, w, rstd[i], (float)n->plus_one, C);
                else layernorm_row_backward(dx, pw, pb, dout, x, w, mean[i], rstd[i], C);
            }
        }
#pragma omp for schedule(static)
        for (int c = 0; c < (dw ? C : 0); c++)
            for (int part = 0; part < NORM_PARTS; part++) {
                const float *p = partial + (size_t)part * 2 * (size_t)C;
                dw[c] += p[c];
                if (n->kind == NORM_LAYER) db[c] += p[C + c];
            }
    }
}

/* db[c] += sum of column c of x */
static inline void cpu_column_sums(Device *d, float *db, const Act *x, int N, int C) {
    d->partial = (float *)cpu_scratch(d, d->partial, &d->partial_count, (size_t)NORM_PARTS * (size_t)C, sizeof(float));
    float *partial = d->partial; /* (parts, C) */
#pragma omp parallel if (cpu_worth((size_t)N * (size_t)C))
    {
#pragma omp for schedule(static)
        for (int part = 0; part < NORM_PARTS; part++) {
            float *restrict sum = partial + (size_t)part * (size_t)C;
            memset(sum, 0, (size_t)C * sizeof *sum);
            const int last = (int)((int64_t)N * (part + 1) / NORM_PARTS);
            int i = (int)((int64_t)N * part / NORM_PARTS);
            for (; i + 4 <= last; i += 4) {
                const Act *restrict r = x + (size_t)i * (size_t)C;
#pragma omp simd
                for (int c = 0; c < C; c++)
                    sum[c] += (act_get(r[c]) + act_get(r[C + c])) + (act_get(r[2 * C + c]) + act_get(r[3 * C + c]));
            }
            for (; i < last; i++) {
                const Act *restrict r = x + (size_t)i * (size_t)C;
#pragma omp simd
                for (int c = 0; c < C; c++) sum[c] += act_get(r[c]);
            }
        }
#pragma omp for schedule(static)
        for (int c = 0; c < C; c++)
            for (int part = 0; part < NORM_PARTS; part++) db[c] += partial[(size_t)part * (size_t)C + (size_t)c];
    }
}

/* gelu(x) = x/2 (1 + tanh(u)) = x sigmoid(2u),  u = sqrt(2/pi) (x + 0.044715 x^3) */
#define GELU_SCALE 0.7978845608028654f
#define GELU_CUBIC 0.044715f

static inline float gelu_sigmoid(float x) {
    return 1.0f / (1.0f + cpu_exp(-2.0f * GELU_SCALE * (x + GELU_CUBIC * x * x * x)));
}

static inline void cpu_gelu_forward(Device *d, Acts *out_, const Acts *pre_, size_t n) {
    (void)d;
    Act *out = (Act *)out_;
    const Act *pre = (const Act *)pre_;
#pragma omp parallel for schedule(static) if (cpu_worth(n))
    for (size_t block = 0; block < n; block += CPU_BLOCK) {
        const size_t end = n - block < CPU_BLOCK ? n : block + CPU_BLOCK;
#if defined CPU_HALF && defined CPU_TILES
        tiles_act_row(out + block, pre + block, true, end - block);
#else
#pragma omp simd
        for (size_t i = block; i < end; i++) out[i] = act_set(act_get(pre[i]) * gelu_sigmoid(act_get(pre[i])));
#endif
    }
}

/* gelu'(x) = s + 2 x s (1 - s) u'(x),  s = sigmoid(2u) */
static inline void cpu_gelu_backward(Device *d, Acts *dinout_, const Acts *pre_, size_t n) {
    (void)d;
    Act *dinout = (Act *)dinout_;
    const Act *pre = (const Act *)pre_;
#pragma omp parallel for schedule(static) if (cpu_worth(n))
    for (size_t block = 0; block < n; block += CPU_BLOCK) {
        const size_t end = n - block < CPU_BLOCK ? n : block + CPU_BLOCK;
#pragma omp simd
        for (size_t i = block; i < end; i++) {
            const float x = act_get(pre[i]), s = gelu_sigmoid(x),
                        slope = GELU_SCALE * (1.0f + 3.0f * GELU_CUBIC * x * x);
            const float steep = s * (1.0f - s); /* 0 for large |x|, where x * x may overflow */
            dinout[i] = act_set(act_get(dinout[i]) * (s + (steep > 0.0f ? 2.0f * x * steep * slope : 0.0f)));
        }
    }
}

/* silu(x) = x sigmoid(x) */
static inline float silu_sigmoid(float x) { return 1.0f / (1.0f + cpu_exp(-x)); }

/* One row of the gated activation. */
static inline void gate_row(Act *restrict out, const Act *restrict gate, const Act *restrict value, bool gelu, int F) {
#if defined CPU_HALF && defined CPU_TILES
    tiles_gate_row(out, gate, value, gelu, F); /* as in the backward pass */
#else
#pragma omp simd
    for (int c = 0; c < F; c++) {
        const float g = act_get(gate[c]);
        out[c] = act_set(g * (gelu ? gelu_sigmoid(g) : silu_sigmoid(g)) * act_get(value[c]));
    }
#endif
}

/* f'(g) of a gate, from its sigmoid s: that of silu, s + g s (1 - s), or that of gelu as above. */
static inline float gate_slope(float g, float s, bool gelu) {
    const float steep = s * (1.0f - s);
    const float inner = gelu ? 2.0f * GELU_SCALE * (1.0f + 3.0f * GELU_CUBIC * g * g) : 1.0f;
    return s + (steep > 0.0f ? g * steep * inner : 0.0f);
}

static inline void gate_row_backward(Act *restrict dgate, Act *restrict dvalue, const Act *restrict dout,
                                     const Act *restrict gate, const Act *restrict value, bool gelu, int F) {
#pragma omp simd
    for (int c = 0; c < F; c++) {
        const float g = act_get(gate[c]), s = gelu ? gelu_sigmoid(g) : silu_sigmoid(g);
        dgate[c] = act_set(act_get(dout[c]) * act_get(value[c]) * gate_slope(g, s, gelu));
        dvalue[c] = act_set(act_get(dout[c]) * g * s);
    }
}

static inline void cpu_gate_forward(Device *d, Acts *out, const Acts *pre, MlpKind kind, int N, int F) {
    (void)d;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)N * (size_t)F))
    for (int i = 0; i < N; i++) {
        const Act *gate = (const Act *)pre + 2 * (size_t)i * (size_t)F;
        gate_row((Act *)out + (size_t)i * (size_t)F, gate, gate + F, kind == MLP_GEGLU, F);
    }
}

static inline void cpu_gate_backward(Device *d, Acts *dpre, const Acts *dout, const Acts *pre, MlpKind kind, int N,
                                     int F) {
    (void)d;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)N * (size_t)F))
    for (int i = 0; i < N; i++) {
        const size_t at = 2 * (size_t)i * (size_t)F;
        const Act *gate = (const Act *)pre + at;
        Act *dgate = (Act *)dpre + at;
        gate_row_backward(dgate, dgate + F, (const Act *)dout + (size_t)i * (size_t)F, gate, gate + F,
                          kind == MLP_GEGLU, F);
    }
}

static inline void cpu_gather_rows(Device *d, Acts *out, const Acts *x, const Ints *row_, int R, int C) {
    (void)d;
    const int32_t *row = (const int32_t *)row_;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)R * (size_t)C))
    for (int r = 0; r < R; r++)
        memcpy((Act *)out + (size_t)r * (size_t)C, (const Act *)x + (size_t)row[r] * (size_t)C,
               (size_t)C * sizeof(Act));
}

static inline void cpu_scatter_rows(Device *d, Acts *x, const Acts *in, const Ints *row, int R, int C) {
    (void)d;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)R * (size_t)C))
    for (int block = 0; block < C; block += COLUMN_BLOCK) {
        const int width = C - block < COLUMN_BLOCK ? C - block : COLUMN_BLOCK;
        for (int r = 0; r < R; r++) {
            Act *t = (Act *)x + (size_t)((const int32_t *)row)[r] * (size_t)C + block;
            const Act *f = (const Act *)in + (size_t)r * (size_t)C + block;
#pragma omp simd
            for (int c = 0; c < width; c++) t[c] = act_set(act_get(t[c]) + act_get(f[c]));
        }
    }
}

/* x += y */
static inline void cpu_add(Device *d, Acts *x_, const Acts *y_, size_t n) {
    (void)d;
    Act *restrict x = (Act *)x_;
    const Act *restrict y = (const Act *)y_;
#pragma omp parallel for simd schedule(static) if (parallel : cpu_worth(n))
    for (size_t i = 0; i < n; i++) x[i] = act_set(act_get(x[i]) + act_get(y[i]));
}

#endif
