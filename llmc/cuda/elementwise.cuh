/* elementwise.cuh - operations that touch each element once: embedding, noise, GELU and gates, addition, bias,
 * gather and scatter.
 *
 * All are memory-bound and move 16 bytes per thread when rows and addresses allow it. If several inputs share a
 * destination row (the embedding's gradient, scatter), the block of the first such input finds the others and adds them
 * in order: no atomics, the same order as on the CPU, the same bits each time.
 */
#ifndef LLMC_CUDA_ELEMENTWISE_CUH
#define LLMC_CUDA_ELEMENTWISE_CUH

#include "../model/backend.h" /* Acts, Ints, Floats, MLP_GEGLU, ... */
#include "common.cuh"         /* lane_load, Device, CUDA_LAUNCHED, lane_store, ... */
#include "ptx.cuh"            /* LAUNCH */

enum { ELEMENT_THREADS = 256, SCATTER_THREADS = 128 };

/* A grid-stride loop over `words` items of W elements. */
#define FOR_WORDS(i, words)                                                                                            \
    for (size_t i = (size_t)blockIdx.x * ELEMENT_THREADS + threadIdx.x; i < (words);                                   \
         i += (size_t)gridDim.x * ELEMENT_THREADS)

/* Launches kernel<T, W> over n elements, with W elements of 16 bytes at a time if `wide` is true, else with W = 1. */
#define LAUNCH_WORDS(d, T, kernel, n, wide, ...)                                                                       \
    do {                                                                                                               \
        constexpr int word_ = 16 / (int)sizeof(T);                                                                     \
        if (wide) {                                                                                                    \
            LAUNCH((kernel<T, word_>), cuda_blocks(d, (n) / word_, ELEMENT_THREADS), ELEMENT_THREADS, 0, (d)->stream,  \
                   __VA_ARGS__);                                                                                       \
        } else {                                                                                                       \
            LAUNCH((kernel<T, 1>), cuda_blocks(d, n, ELEMENT_THREADS), ELEMENT_THREADS, 0, (d)->stream, __VA_ARGS__);  \
        }                                                                                                              \
    } while (0)

/* ---- embedding --------------------------------------------------------------------------------------------------- */

/* out = scale wte[token] + wpe[position]; wpe NULL: no positions */
template <typename T, int W>
__global__ void embed_forward_kernel(T *__restrict__ out, const T *__restrict__ wte, const T *__restrict__ wpe,
                                     const int32_t *__restrict__ token, const int32_t *__restrict__ position,
                                     float scale, int N, int C) {
    const int words = C / W;
    FOR_WORDS(at, (size_t)N * words) {
        const size_t i = at / words;
        const int c = (int)(at % words) * W;
        float t[W], p[W] = {0};
        lane_load(t, wte + (size_t)token[i] * C + c);
        if (wpe) lane_load(p, wpe + (size_t)position[i] * C + c);
#pragma unroll
        for (int k = 0; k < W; k++) t[k] = fmaf(scale, t[k], p[k]);
        lane_store(out + i * C + c, t);
    }
}

template <typename T>
static void cuda_embed_forward(Device *d, Acts *out, const Weights *wte, const Weights *wpe, const Ints *token,
                               const Ints *position, float scale, int N, int C) {
    if (N == 0) return;
    LAUNCH_WORDS(d, T, embed_forward_kernel, (size_t)N * (size_t)C, cuda_wide<T>((size_t)C, out, wte, wpe), (T *)out,
                 (const T *)wte, (const T *)wpe, (const int32_t *)token, (const int32_t *)position, scale, N, C);
    CUDA_LAUNCHED(d, "embed_forward", "N %d, C %d", N, C);
}

/* to[row[i]] += scale from[i], in the order of i. One block per input: it returns if an earlier input has the same
 * destination, else it adds all inputs with that destination. Not SCALED: scale is 1. */
template <typename D, typename T, int W, bool SCALED>
__global__ void scatter_kernel(D *__restrict__ to, const T *__restrict__ from, const int32_t *__restrict__ row,
                               float scale, int N, int C) {
    __shared__ int found[SCATTER_THREADS], before[SCATTER_THREADS / 32 + 1];
    const int i = blockIdx.x, mine = row[i], thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    for (int last = i; last > 0; last -= SCATTER_THREADS) { /* backwards: a duplicate is often nearby */
        const int j = last - 1 - thread;
        if (__syncthreads_or(j >= 0 && row[j] == mine)) return;
    }
    for (int first = i; first < N; first += SCATTER_THREADS) {
        const int j = first + thread;
        const bool hit = j < N && row[j] == mine;
        const unsigned hits = __ballot_sync(0xffffffffu, hit);
        if (lane == 0) before[warp + 1] = __popc(hits);
        __syncthreads();
        if (thread == 0) {
            before[0] = 0;
            for (int w = 0; w < SCATTER_THREADS / 32; w++) before[w + 1] += before[w];
        }
        __syncthreads();
        if (hit) found[before[warp] + __popc(hits & ((1u << lane) - 1u))] = j;
        __syncthreads();
        const int count = before[SCATTER_THREADS / 32];
        if (count > 0) {
            for (int c = thread * W; c < C; c += SCATTER_THREADS * W) {
                float sum[W], add[W];
                lane_load(sum, to + (size_t)mine * C + c);
                for (int k = 0; k < count; k++) {
                    lane_load(add, from + (size_t)found[k] * C + c);
#pragma unroll
                    for (int e = 0; e < W; e++) sum[e] = SCALED ? fmaf(scale, add[e], sum[e]) : sum[e] + add[e];
                }
                lane_store(to + (size_t)mine * C + c, sum);
            }
        }
        __syncthreads();
    }
}

template <bool SCALED, typename D, typename T>
static void scatter_launch(Device *d, D *to, const T *from, const Ints *row, float scale, int N, int C) {
    constexpr int W = 16 / (int)sizeof(T);
    const int32_t *rows = (const int32_t *)row;
    if (N == 0) return;
    if (cuda_wide<T>((size_t)C, to, from)) {
        LAUNCH((scatter_kernel<D, T, W, SCALED>), (unsigned)N, SCATTER_THREADS, 0, d->stream, to, from, rows, scale, N,
               C);
    } else {
        LAUNCH((scatter_kernel<D, T, 1, SCALED>), (unsigned)N, SCATTER_THREADS, 0, d->stream, to, from, rows, scale, N,
               C);
    }
    CUDA_LAUNCHED(d, "scatter", "N %d, C %d", N, C);
}

template <typename T>
static void cuda_embed_backward(Device *d, Floats *dwte, Floats *dwpe, const Acts *dout, const Ints *token,
                                const Ints *position, float scale, int N, int C) {
    const T *from = (const T *)dout;
    if (scale == 1) scatter_launch<false>(d, (float *)dwte, from, token, 1, N, C);
    else scatter_launch<true>(d, (float *)dwte, from, token, scale, N, C);
    if (dwpe) scatter_launch<false>(d, (float *)dwpe, from, position, 1, N, C);
}

template <typename T> static void cuda_scatter_rows(Device *d, Acts *x, const Acts *in, const Ints *row, int R, int C) {
    scatter_launch<false>(d, (T *)x, (const T *)in, row, 1, R, C);
}

/* x[i,c] += scale[i] u, u uniform in (-1, 1), drawn by record and position */
template <typename T>
__global__ void noise_kernel(T *x, const float *__restrict__ scale, const int *__restrict__ record,
                             const int *__restrict__ position, int N, int C, uint64_t seed, uint64_t stream) {
    FOR_WORDS(at, (size_t)N * C) {
        const size_t i = at / C, c = at % C;
        const float u = 2.0f * cuda_uniform(seed, stream + (uint64_t)record[i], (uint64_t)position[i] * C + c) - 1.0f;
        x[at] = from_float<T>(to_float(x[at]) + scale[i] * u);
    }
}

template <typename T>
static void cuda_noise_add(Device *d, Acts *x, const Floats *scale, const Ints *record, const Ints *position, int N,
                           int C, uint64_t seed, uint64_t stream) {
    if (N == 0) return;
    LAUNCH((noise_kernel<T>), cuda_blocks(d, (size_t)N * (size_t)C, ELEMENT_THREADS), ELEMENT_THREADS, 0, d->stream,
           (T *)x, (const float *)scale, (const int *)record, (const int *)position, N, C, seed, stream);
    CUDA_LAUNCHED(d, "noise_add", "N %d, C %d", N, C);
}

/* ---- GELU -------------------------------------------------------------------------------------------------------- */

#define CUDA_GELU_SCALE 0.7978845608028654f /* sqrt(2/pi) */
#define CUDA_GELU_CUBIC 0.044715f

/* gelu(x) = x/2 (1 + tanh u) = x sigmoid(2u),  u = sqrt(2/pi) (x + 0.044715 x^3) */
__device__ static inline float gelu_gate(float x) {
    return 1.0f / (1.0f + expf(-2.0f * CUDA_GELU_SCALE * (x + CUDA_GELU_CUBIC * x * x * x)));
}

/* gelu'(x) = s + 2 x s (1 - s) u'(x),  s = sigmoid(2u) */
__device__ static inline float gelu_slope(float x) {
    const float s = gelu_gate(x), steep = s * (1.0f - s); /* 0 for large |x|, for which x * x may overflow */
    const float inner = CUDA_GELU_SCALE * (1.0f + 3.0f * CUDA_GELU_CUBIC * x * x);
    return s + (steep > 0.0f ? 2.0f * x * steep * inner : 0.0f);
}

template <typename T, int W> __global__ void gelu_forward_kernel(T *out, const T *pre, size_t n) {
    FOR_WORDS(at, n / W) {
        float x[W];
        lane_load(x, pre + at * W);
#pragma unroll
        for (int k = 0; k < W; k++) x[k] *= gelu_gate(x[k]);
        lane_store(out + at * W, x);
    }
}

template <typename T, int W> __global__ void gelu_backward_kernel(T *dinout, const T *__restrict__ pre, size_t n) {
    FOR_WORDS(at, n / W) {
        float x[W], o[W];
        lane_load(x, pre + at * W);
        lane_load(o, dinout + at * W);
#pragma unroll
        for (int k = 0; k < W; k++) o[k] *= gelu_slope(x[k]);
        lane_store(dinout + at * W, o);
    }
}

template <typename T> static void cuda_gelu_forward(Device *d, Acts *out, const Acts *pre, size_t n) {
    if (n == 0) return;
    LAUNCH_WORDS(d, T, gelu_forward_kernel, n, cuda_wide<T>(n, out, pre), (T *)out, (const T *)pre, n);
    CUDA_LAUNCHED(d, "gelu_forward", "n %zu", n);
}

template <typename T> static void cuda_gelu_backward(Device *d, Acts *dinout, const Acts *pre, size_t n) {
    if (n == 0) return;
    LAUNCH_WORDS(d, T, gelu_backward_kernel, n, cuda_wide<T>(n, dinout, pre), (T *)dinout, (const T *)pre, n);
    CUDA_LAUNCHED(d, "gelu_backward", "n %zu", n);
}

/* ---- gated activations ------------------------------------------------------------------------------------------- */

/* The sigmoid s of a gate g, f(g) = g s, and f'(g): of silu, or of gelu as above. */
template <bool GELU> __device__ static inline float gate_sigmoid(float g) {
    if (GELU) return gelu_gate(g);
    return 1.0f / (1.0f + expf(-g));
}
template <bool GELU> __device__ static inline float gate_slope(float g) {
    if (GELU) return gelu_slope(g);
    const float s = gate_sigmoid<false>(g), steep = s * (1.0f - s);
    return s + (steep > 0.0f ? g * steep : 0.0f);
}

/* out = f(g) u; a row of pre holds its F gates g and then its F values u. */
template <typename T, int W, bool GELU> __device__ static inline void gate_rows(T *out, const T *pre, int N, int F) {
    const int words = F / W;
    FOR_WORDS(at, (size_t)N * words) {
        const size_t gate = at / words * 2 * F + at % words * W;
        float g[W], u[W];
        lane_load(g, pre + gate);
        lane_load(u, pre + gate + F);
#pragma unroll
        for (int k = 0; k < W; k++) g[k] *= gate_sigmoid<GELU>(g[k]) * u[k];
        lane_store(out + at * W, g);
    }
}

template <typename T, int W, bool GELU>
__device__ static inline void gate_rows_backward(T *dpre, const T *__restrict__ dout, const T *__restrict__ pre, int N,
                                                 int F) {
    const int words = F / W;
    FOR_WORDS(at, (size_t)N * words) {
        const size_t gate = at / words * 2 * F + at % words * W;
        float g[W], u[W], o[W];
        lane_load(g, pre + gate);
        lane_load(u, pre + gate + F);
        lane_load(o, dout + at * W);
#pragma unroll
        for (int k = 0; k < W; k++) {
            u[k] *= o[k] * gate_slope<GELU>(g[k]);
            o[k] *= g[k] * gate_sigmoid<GELU>(g[k]);
        }
        lane_store(dpre + gate, u);
        lane_store(dpre + gate + F, o);
    }
}

template <typename T, int W> __global__ void swiglu_forward_kernel(T *out, const T *pre, int N, int F) {
    gate_rows<T, W, false>(out, pre, N, F);
}
template <typename T, int W> __global__ void geglu_forward_kernel(T *out, const T *pre, int N, int F) {
    gate_rows<T, W, true>(out, pre, N, F);
}
template <typename T, int W>
__global__ void swiglu_backward_kernel(T *dpre, const T *__restrict__ dout, const T *__restrict__ pre, int N, int F) {
    gate_rows_backward<T, W, false>(dpre, dout, pre, N, F);
}
template <typename T, int W>
__global__ void geglu_backward_kernel(T *dpre, const T *__restrict__ dout, const T *__restrict__ pre, int N, int F) {
    gate_rows_backward<T, W, true>(dpre, dout, pre, N, F);
}

template <typename T> static void cuda_gate_forward(Device *d, Acts *out, const Acts *pre, MlpKind kind, int N, int F) {
    const size_t n = (size_t)N * (size_t)F;
    const bool wide = cuda_wide<T>((size_t)F, out, pre);
    if (n == 0) return;
    if (kind == MLP_GEGLU) LAUNCH_WORDS(d, T, geglu_forward_kernel, n, wide, (T *)out, (const T *)pre, N, F);
    else LAUNCH_WORDS(d, T, swiglu_forward_kernel, n, wide, (T *)out, (const T *)pre, N, F);
    CUDA_LAUNCHED(d, "gate_forward", "N %d, F %d", N, F);
}

template <typename T>
static void cuda_gate_backward(Device *d, Acts *dpre, const Acts *dout, const Acts *pre, MlpKind kind, int N, int F) {
    const size_t n = (size_t)N * (size_t)F;
    const bool wide = cuda_wide<T>((size_t)F, dpre, dout, pre);
    if (n == 0) return;
    if (kind == MLP_GEGLU)
        LAUNCH_WORDS(d, T, geglu_backward_kernel, n, wide, (T *)dpre, (const T *)dout, (const T *)pre, N, F);
    else LAUNCH_WORDS(d, T, swiglu_backward_kernel, n, wide, (T *)dpre, (const T *)dout, (const T *)pre, N, F);
    CUDA_LAUNCHED(d, "gate_backward", "N %d, F %d", N, F);
}

/* ---- addition ---------------------------------------------------------------------------------------------------- */

template <typename T, int W> __global__ void add_kernel(T *x, const T *__restrict__ y, size_t n) {
    FOR_WORDS(at, n / W) {
        float v[W], add[W];
        lane_load(v, x + at * W);
        lane_load(add, y + at * W);
#pragma unroll
        for (int k = 0; k < W; k++) v[k] += add[k];
        lane_store(x + at * W, v);
    }
}

template <typename T> static void cuda_add(Device *d, Acts *x, const Acts *y, size_t n) {
    if (n == 0) return;
    LAUNCH_WORDS(d, T, add_kernel, n, cuda_wide<T>(n, x, y), (T *)x, (const T *)y, n);
    CUDA_LAUNCHED(d, "add", "n %zu", n);
}

/* ---- bias -------------------------------------------------------------------------------------------------------- */

/* x[i, c] += b[c] */
template <typename T, int W> __global__ void bias_kernel(T *x, const T *__restrict__ b, int N, int C) {
    const int words = C / W;
    FOR_WORDS(at, (size_t)N * words) {
        float v[W], add[W];
        lane_load(v, x + at * W);
        lane_load(add, b + (at % words) * W);
#pragma unroll
        for (int k = 0; k < W; k++) v[k] += add[k];
        lane_store(x + at * W, v);
    }
}

template <typename T> static void bias_add(Device *d, T *x, const T *b, int N, int C) {
    LAUNCH_WORDS(d, T, bias_kernel, (size_t)N * (size_t)C, cuda_wide<T>((size_t)C, x, b), x, b, N, C);
    CUDA_LAUNCHED(d, "bias", "N %d, C %d", N, C);
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

template <typename T, int W>
__global__ void gather_kernel(T *__restrict__ out, const T *__restrict__ x, const int32_t *__restrict__ row, int R,
                              int C) {
    const int words = C / W;
    FOR_WORDS(at, (size_t)R * words) {
        const size_t r = at / words, c = at % words * W;
        float v[W];
        lane_load(v, x + (size_t)row[r] * C + c);
        lane_store(out + r * C + c, v);
    }
}

template <typename T> static void cuda_gather_rows(Device *d, Acts *out, const Acts *x, const Ints *row, int R, int C) {
    if (R == 0) return;
    LAUNCH_WORDS(d, T, gather_kernel, (size_t)R * (size_t)C, cuda_wide<T>((size_t)C, out, x), (T *)out, (const T *)x,
                 (const int32_t *)row, R, C);
    CUDA_LAUNCHED(d, "gather_rows", "R %d, C %d", R, C);
}

#endif
