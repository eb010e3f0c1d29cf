/* head.cuh - the language-model head on the GPU: log-probabilities, entropy, argmax and their gradient over chunks
 * of logits, and the value head.
 *
 * Logits exist only for one chunk of rows at a time (at most CUDA_HEAD_CHUNK logits), as float32 from cuBLASLt. One
 * kernel then takes one row per block. It reads the row once and keeps, online (Milakov and Gimelshein 2018), the
 * maximum logit, its position, sum e^y and sum y e^y with y = (z - max) / temperature. These give the log-probability
 * and the entropy. If a gradient is requested, the kernel reads the row again, by then from the cache, and writes the
 * gradient of the logits in the storage type (with float32: over the logits). Two products then give dh and dweight.
 */
#ifndef LLMC_CUDA_HEAD_CUH
#define LLMC_CUDA_HEAD_CUH

#include "../model/backend.h" /* ROW_ALIGN, Floats, Acts, Weights, ... */
#include "common.cuh"         /* cuda_ceil, CUDA_LAUNCHED, Device, lane_load, ... */
#include "matmul.cuh"         /* aligned_rows, cuda_matmul_nt, cuda_matmul_nn, cuda_matmul_tn */
#include "ptx.cuh"            /* LAUNCH */
#include <float.h>

#define CUDA_HEAD_CHUNK ((size_t)64 << 20) /* maximum logits per chunk, unless ROW_ALIGN rows need more */

enum { HEAD_THREADS = 512 };

/* Rows per chunk of logits: as few chunks as possible, of equal size, rounded up to a multiple of ROW_ALIGN. */
static inline int cuda_head_chunk_rows(int rows, int padded_vocab) {
    const size_t fit = CUDA_HEAD_CHUNK / (size_t)padded_vocab / ROW_ALIGN * ROW_ALIGN;
    const size_t most = fit < (size_t)ROW_ALIGN ? (size_t)ROW_ALIGN : fit, chunks = cuda_ceil((size_t)rows, most);
    return (int)(cuda_ceil(cuda_ceil((size_t)rows, chunks), ROW_ALIGN) * ROW_ALIGN);
}

/* The maximum scratch memory of one call of head, logits or sample, in bytes. */
template <typename T> static inline size_t cuda_head_scratch(int rows, int padded_vocab) {
    const size_t logits = (size_t)cuda_head_chunk_rows(rows > 0 ? rows : 1, padded_vocab) * (size_t)padded_vocab;
    return logits * (sizeof(float) + (sizeof(T) != sizeof(float) ? sizeof(T) : 0));
}

/* ---- sums over a row of logits --------------------------------------------------------------------------------- */

/* Statistics of some of a row's logits: the maximum and its first position, sum e^y and sum y e^y, with
 * y = (z - max) / temperature. NaN is never the maximum, and makes the sums NaN. */
struct LogitSums {
    float max, sum, weighted;
    int argmax;
};

__device__ static inline LogitSums logits_none() { return LogitSums{-INFINITY, 0, 0, INT32_MAX}; }

/* Makes the sums relative to a maximum that is at least as large: every y changes by `fall` <= 0. */
__device__ static inline void logits_lower(LogitSums &s, float max, float inverse_temperature) {
    if (s.max == max) return;
    const float fall = (s.max - max) * inverse_temperature, factor = expf(fall);
    /* factor 0: the old maximum is far below, or there were no logits (fall is -inf); 0 * sum keeps a NaN */
    s.weighted = factor > 0 ? factor * (s.weighted + s.sum * fall) : 0 * s.sum;
    s.sum *= factor;
    s.max = max;
}

__device__ static inline LogitSums logits_merge(LogitSums a, LogitSums b, float inverse_temperature) {
    const float max = fmaxf(a.max, b.max);
    const int argmax = a.max == b.max ? min(a.argmax, b.argmax) : a.max > b.max ? a.argmax : b.argmax;
    logits_lower(a, max, inverse_temperature);
    logits_lower(b, max, inverse_temperature);
    return LogitSums{max, a.sum + b.sum, a.weighted + b.weighted, argmax};
}

/* cap tanh(z / cap) */
__device__ static inline float logit_cap(float z, float cap) { return cap * tanhf(z * (1.0f / cap)); }

/* Statistics of the block's row z[0 .. V-1], with CAPPED of the row after the cap. Every thread gets the result. */
template <int THREADS, bool CAPPED>
__device__ static inline LogitSums logits_read(const float *__restrict__ z, int V, float inverse_temperature,
                                               float cap) {
    constexpr int W = 8; /* logits per thread and step: the maximum changes at most once per step */
    __shared__ LogitSums part[THREADS / 32];
    LogitSums s = logits_none();
    const bool wide = (uintptr_t)z % 16 == 0;
    for (int v = (int)threadIdx.x * W; v < V; v += THREADS * W) {
        float x[W], max = -INFINITY;
        if (wide && v + W <= V) lane_load<W>(x, z + v);
        else
#pragma unroll
            for (int k = 0; k < W; k++) x[k] = v + k < V ? z[v + k] : -INFINITY;
#pragma unroll
        for (int k = 0; k < W; k++) {
            if (CAPPED) x[k] = v + k < V ? logit_cap(x[k], cap) : -INFINITY;
            max = fmaxf(max, x[k]);
        }
        if (max > s.max) {
#pragma unroll
            for (int k = W - 1; k >= 0; k--) s.argmax = x[k] == max ? v + k : s.argmax;
            logits_lower(s, max, inverse_temperature);
        }
#pragma unroll
        for (int k = 0; k < W; k++) {
            const float y = (x[k] - s.max) * inverse_temperature, e = x[k] == -INFINITY ? 0 : expf(y);
            s.sum += e;
            s.weighted += e > 0 ? e * y : 0;
        }
    }
    for (int offset = 16; offset > 0; offset /= 2) {
        const LogitSums other = {
            __shfl_xor_sync(0xffffffffu, s.max, offset), __shfl_xor_sync(0xffffffffu, s.sum, offset),
            __shfl_xor_sync(0xffffffffu, s.weighted, offset), __shfl_xor_sync(0xffffffffu, s.argmax, offset)};
        s = logits_merge(s, other, inverse_temperature);
    }
    __syncthreads(); /* threads may still be reading `part` from an earlier call */
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
    __syncthreads();
    s = part[0];
    for (int w = 1; w < THREADS / 32; w++) s = logits_merge(s, part[w], inverse_temperature);
    return s;
}

/* ---- head ------------------------------------------------------------------------------------------------------ */

/* Processes rows first .. first+gridDim.x-1 of the head, whose logits are z, before the cap if there is one (CAPPED).
 * dz[., v] = dloss/dz, including the factor 1 / temperature (backend.h). Padding gets 0. dz may be z. */
template <typename T, bool CAPPED>
__global__ static void __launch_bounds__(HEAD_THREADS) head_kernel(const Head a, int first, const float *z_, T *dz_) {
    const int V = a.vocab, Vp = a.padded_vocab, row = first + (int)blockIdx.x;
    const float *z = z_ + (size_t)blockIdx.x * Vp, inverse_temperature = 1.0f / a.temperature;
    const int target = ((const int32_t *)a.target)[row];
    const float raw = z[target]; /* read before the barriers in logits_read(): dz may be z */
    const float chosen = CAPPED ? logit_cap(raw, a.cap) : raw;
    const LogitSums s = logits_read<HEAD_THREADS, CAPPED>(z, V, inverse_temperature, a.cap);
    const float log_sum = logf(s.sum), entropy = log_sum - s.weighted / s.sum;
    if (threadIdx.x == 0) {
        ((float *)a.logp)[row] = (chosen - s.max) * inverse_temperature - log_sum;
        if (a.entropy) ((float *)a.entropy)[row] = entropy;
        if (a.argmax) ((int32_t *)a.argmax)[row] = s.argmax < V ? s.argmax : 0; /* all NaN: 0 */
    }
    if (!a.dlogp) return;
    T *dz = dz_ + (size_t)blockIdx.x * Vp;
    constexpr int W = 16 / (int)sizeof(T);
    const float toward = ((const float *)a.dlogp)[row] * inverse_temperature;
    const float spread = a.dentropy ? ((const float *)a.dentropy)[row] * inverse_temperature : 0;
    const bool wide = Vp % 8 == 0 && (uintptr_t)z % 16 == 0 && (uintptr_t)dz % 16 == 0;
    for (int v = (int)threadIdx.x * W; v < Vp; v += HEAD_THREADS * W) {
        float x[W];
        if (wide) lane_load<W>(x, z + v);
        else
#pragma unroll
            for (int k = 0; k < W; k++) x[k] = v + k < V ? z[v + k] : 0;
#pragma unroll
        for (int k = 0; k < W; k++) {
            float slope = 1; /* of the cap: 1 - tanh^2 */
            if (CAPPED) {
                const float bent = tanhf(x[k] * (1.0f / a.cap));
                slope = 1 - bent * bent;
                x[k] = a.cap * bent;
            }
            const float logp = (x[k] - s.max) * inverse_temperature - log_sum, p = expf(logp);
            const float g = -toward * p - (p > 0 ? spread * p * (logp + entropy) : 0);
            x[k] = v + k < V ? g + (v + k == target ? toward : 0) : 0;
            if (CAPPED && v + k < V) x[k] *= slope;
        }
        if (wide) lane_store<W>(dz + v, x);
        else
            for (int k = 0; k < W && v + k < Vp; k++) dz[v + k] = from_float<T>(x[k]);
    }
}

template <typename T> static inline void cuda_head(Device *d, const Head *a) {
    const int C = a->channels, Vp = a->padded_vocab;
    if (a->rows == 0) return;
    const int chunk = cuda_head_chunk_rows(a->rows, Vp);
    const size_t count = (size_t)chunk * (size_t)Vp;
    float *z = cuda_scratch_of<float>(d, count, "a chunk of logits");
    T *dz = NULL;
    if constexpr (sizeof(T) == sizeof(float)) dz = z;
    else if (a->dlogp) dz = cuda_scratch_of<T>(d, count, "the gradient of a chunk of logits");
    if (d->failed) return;
    for (int first = 0; first < a->rows; first += chunk) {
        const int n = a->rows - first < chunk ? a->rows - first : chunk;
        const T *h = (const T *)a->h + (size_t)first * C;
        cuda_matmul_nt<T, float>(d, z, h, (const T *)a->weight, aligned_rows(n), Vp, C, 1, 0);
        if (a->cap > 0) LAUNCH((head_kernel<T, true>), (unsigned)n, HEAD_THREADS, 0, d->stream, *a, first, z, dz);
        else LAUNCH((head_kernel<T, false>), (unsigned)n, HEAD_THREADS, 0, d->stream, *a, first, z, dz);
        CUDA_LAUNCHED(d, "head_kernel", "R %d, C %d, V %d, Vp %d", n, C, a->vocab, Vp);
        if (!a->dlogp) continue;
        cuda_matmul_nn<T, T>(d, (T *)a->dh + (size_t)first * C, dz, (const T *)a->weight, aligned_rows(n), C, Vp, 1, 0);
        if (a->dweight) cuda_matmul_tn<T, float>(d, (float *)a->dweight, dz, h, n, Vp, C, 1, 1);
    }
}

/* out[r, v] = z[r, v] for v < V, after the cap unless it is 0. out may be z if V is Vp. Grid (rows). */
__global__ static void logits_copy_kernel(float *out, const float *z, float cap, int V, int Vp) {
    for (int v = (int)threadIdx.x; v < V; v += (int)blockDim.x) {
        const float x = z[(size_t)blockIdx.x * Vp + v];
        out[(size_t)blockIdx.x * V + v] = cap > 0 ? logit_cap(x, cap) : x;
    }
}

template <typename T>
static inline void cuda_logits(Device *d, Floats *out, const Acts *h, const Weights *weight, float cap, int R, int C,
                               int V, int Vp) {
    if (R == 0) return;
    const int chunk = cuda_head_chunk_rows(R, Vp);
    float *z = cuda_scratch_of<float>(d, (size_t)chunk * (size_t)Vp, "a chunk of logits");
    if (!z) return;
    for (int first = 0; first < R; first += chunk) {
        const int n = R - first < chunk ? R - first : chunk;
        cuda_matmul_nt<T, float>(d, z, (const T *)h + (size_t)first * C, (const T *)weight, aligned_rows(n), Vp, C, 1,
                                 0);
        LAUNCH(logits_copy_kernel, (unsigned)n, 256, 0, d->stream, (float *)out + (size_t)first * V, z, cap, V, Vp);
        CUDA_LAUNCHED(d, "logits_copy_kernel", "R %d, V %d, Vp %d", n, V, Vp);
    }
}

/* ---- value head ------------------------------------------------------------------------------------------------ */

enum { VALUE_THREADS = 256, VALUE_COLUMNS = 32 };

/* value[r] = h[r] . w + b; one warp per row. */
template <typename T, int W>
__global__ static void __launch_bounds__(VALUE_THREADS)
    value_forward_kernel(float *__restrict__ value, const T *__restrict__ h, const T *__restrict__ w,
                         const T *__restrict__ b, int R, int C) {
    const int row = (int)(blockIdx.x * (VALUE_THREADS / 32) + threadIdx.x / 32), lane = threadIdx.x % 32;
    float sum = 0;
    if (row >= R) return;
    for (int c = lane * W; c < C; c += 32 * W) {
        float x[W], y[W];
        lane_load<W>(x, h + (size_t)row * C + c);
        lane_load<W>(y, w + c);
#pragma unroll
        for (int k = 0; k < W; k++) sum = fmaf(x[k], y[k], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) value[row] = sum + to_float(b[0]);
}

template <typename T>
static inline void cuda_value_forward(Device *d, Floats *value, const Acts *h, const Weights *w, const Weights *b,
                                      int R, int C) {
    constexpr int W = 16 / (int)sizeof(T);
    if (R == 0) return;
    const unsigned blocks = (unsigned)cuda_ceil((size_t)R, VALUE_THREADS / 32);
    if (cuda_wide<T>((size_t)C, h, w))
        LAUNCH((value_forward_kernel<T, W>), blocks, VALUE_THREADS, 0, d->stream, (float *)value, (const T *)h,
               (const T *)w, (const T *)b, R, C);
    else
        LAUNCH((value_forward_kernel<T, 1>), blocks, VALUE_THREADS, 0, d->stream, (float *)value, (const T *)h,
               (const T *)w, (const T *)b, R, C);
    CUDA_LAUNCHED(d, "value_forward_kernel", "R %d, C %d", R, C);
}

/* dh += dvalue w, dw += dvalue^T h, db += sum of dvalue. A block takes 32 columns, and each of its 8 warps takes every
 * eighth row. The warps' sums are added in order. One extra block computes db. */
template <typename T>
__global__ static void __launch_bounds__(VALUE_THREADS)
    value_backward_kernel(T *__restrict__ dh, float *__restrict__ dw, float *__restrict__ db,
                          const float *__restrict__ dvalue, const T *__restrict__ h, const T *__restrict__ w, int R,
                          int C) {
    constexpr int WARPS = VALUE_THREADS / 32;
    __shared__ float part[WARPS][VALUE_COLUMNS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = (int)blockIdx.x * VALUE_COLUMNS + lane;
    if (blockIdx.x == gridDim.x - 1) {
        float sum = 0;
        for (int r = (int)threadIdx.x; r < R; r += VALUE_THREADS) sum += dvalue[r];
        sum = block_sum<VALUE_THREADS>(sum);
        if (threadIdx.x == 0) db[0] += sum;
        return;
    }
    float sum = 0;
    if (c < C) {
        const float weight = to_float(w[c]);
        for (int r = warp; r < R; r += WARPS) {
            const size_t at = (size_t)r * C + c;
            const float g = dvalue[r];
            sum = fmaf(g, to_float(h[at]), sum);
            dh[at] = from_float<T>(fmaf(g, weight, to_float(dh[at])));
        }
    }
    part[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || c >= C) return;
    sum = 0;
    for (int i = 0; i < WARPS; i++) sum += part[i][lane];
    dw[c] += sum;
}

template <typename T>
static inline void cuda_value_backward(Device *d, Acts *dh, Floats *dw, Floats *db, const Floats *dvalue, const Acts *h,
                                       const Weights *w, int R, int C) {
    if (R == 0) return;
    LAUNCH((value_backward_kernel<T>), (unsigned)cuda_ceil((size_t)C, VALUE_COLUMNS) + 1, VALUE_THREADS, 0, d->stream,
           (T *)dh, (float *)dw, (float *)db, (const float *)dvalue, (const T *)h, (const T *)w, R, C);
    CUDA_LAUNCHED(d, "value_backward_kernel", "R %d, C %d", R, C);
}

#endif
