/* norm.cuh - layernorm and RMSNorm on the GPU: forward, forward fused with the residual addition, and backward.
 *
 * Forward: one warp per row. The row is read once, kept in registers, and written once, for rows of up to 2048 bf16 or
 * 1024 float32 channels. Longer or unaligned rows take one block per row, which reads the row again from the cache.
 * With a residual, the sum is rounded to the storage type before it is normalised, so that the backward pass sees the
 * same values as the forward pass.
 *
 * Backward: a block owns a fixed part of the rows and a thread owns columns. The block processes its rows in order and
 * adds to dx. Each thread holds its columns' sums for dw and db in registers; a second kernel adds the parts in order.
 * There are no float atomics, and the parts depend on N alone: the same input gives the same bits on every device.
 */
#ifndef LLMC_CUDA_NORM_CUH
#define LLMC_CUDA_NORM_CUH

#include "../model/backend.h" /* Norm, NORM_RMS, NORM_LAYER */
#include "common.cuh"         /* lane_load, to_float, Device, warp_sum, ... */
#include "ptx.cuh"            /* LAUNCH */

enum { NORM_WARPS = 4, NORM_BLOCK = 256, NORM_PARTS_MOST = 1024, NORM_PART_ROWS = 8 };

/* ---- forward --------------------------------------------------------------------------------------------------- */

/* Loads W elements of x as float. If delta is given, adds it and stores the result in sum. */
template <typename T, int W>
__device__ static inline void norm_input(float (&v)[W], T *sum, const T *x, const T *delta, size_t at) {
    lane_load(v, x + at);
    if (!delta) return;
    float add[W];
    lane_load(add, delta + at);
#pragma unroll
    for (int k = 0; k < W; k++) v[k] = to_float(from_float<T>(v[k] + add[k]));
    lane_store(sum + at, v);
}

/* RMS: `one` is added to w, and unless it is NULL, `add`, which may be out, to the result. b is not used. */
template <typename T, int W, bool RMS>
__device__ static inline void norm_output(T *out, const float (&v)[W], const T *w, const T *b, const T *add, float one,
                                          float m, float s, size_t row, int c) {
    float scale[W], shift[W] = {0}, o[W];
    lane_load(scale, w + c);
    if (!RMS) lane_load(shift, b + c);
    else if (add) lane_load(shift, add + row + c);
#pragma unroll
    for (int k = 0; k < W; k++)
        o[k] = RMS ? v[k] * s * (scale[k] + one) + shift[k] : (v[k] - m) * s * scale[k] + shift[k];
    lane_store(out + row + c, o);
}

/* One warp per row of C <= 32 W ITEMS channels. delta NULL: no residual. sum may be x. RMS: mean and b are not
 * used. add, one: as in norm_output(). */
template <typename T, int W, int ITEMS, bool RMS>
__global__ void norm_warp_kernel(T *sum, T *out, float *__restrict__ mean, float *__restrict__ rstd, const T *x,
                                 const T *__restrict__ delta, const T *__restrict__ w, const T *__restrict__ b,
                                 const T *add, float eps, float one, int N, int C) {
    const int lane = threadIdx.x % 32, i = blockIdx.x * NORM_WARPS + threadIdx.x / 32;
    if (i >= N) return;
    const size_t row = (size_t)i * C;
    float v[ITEMS][W], total = 0, squares = 0;
#pragma unroll
    for (int item = 0; item < ITEMS; item++) {
        const int c = (item * 32 + lane) * W;
        if (c >= C) continue;
        norm_input<T, W>(v[item], sum, x, delta, row + c);
#pragma unroll
        for (int k = 0; k < W; k++) total += v[item][k];
    }
    const float m = RMS ? 0.0f : warp_sum(total) / C;
#pragma unroll
    for (int item = 0; item < ITEMS; item++)
        if ((item * 32 + lane) * W < C)
#pragma unroll
            for (int k = 0; k < W; k++) squares += (v[item][k] - m) * (v[item][k] - m);
    const float s = 1.0f / sqrtf(warp_sum(squares) / C + eps);
    if (lane == 0) {
        if (!RMS) mean[i] = m;
        rstd[i] = s;
    }
#pragma unroll
    for (int item = 0; item < ITEMS; item++) {
        const int c = (item * 32 + lane) * W;
        if (c < C) norm_output<T, W, RMS>(out, v[item], w, b, add, one, m, s, row, c);
    }
}

/* One block per row of any length. */
template <typename T, int W, bool RMS>
__global__ void norm_block_kernel(T *sum, T *out, float *__restrict__ mean, float *__restrict__ rstd, const T *x,
                                  const T *__restrict__ delta, const T *__restrict__ w, const T *__restrict__ b,
                                  const T *add, float eps, float one, int C) {
    const size_t row = (size_t)blockIdx.x * C;
    const T *input = delta ? sum : x;
    float v[W], total = 0, squares = 0;
    for (int c = threadIdx.x * W; c < C; c += NORM_BLOCK * W) {
        norm_input<T, W>(v, sum, x, delta, row + c);
#pragma unroll
        for (int k = 0; k < W; k++) total += v[k];
    }
    const float m = RMS ? 0.0f : block_sum<NORM_BLOCK>(total) / C;
    for (int c = threadIdx.x * W; c < C; c += NORM_BLOCK * W) { /* values that this thread wrote */
        lane_load(v, input + row + c);
#pragma unroll
        for (int k = 0; k < W; k++) squares += (v[k] - m) * (v[k] - m);
    }
    const float s = 1.0f / sqrtf(block_sum<NORM_BLOCK>(squares) / C + eps);
    if (threadIdx.x == 0) {
        if (!RMS) mean[blockIdx.x] = m;
        rstd[blockIdx.x] = s;
    }
    for (int c = threadIdx.x * W; c < C; c += NORM_BLOCK * W) {
        lane_load(v, input + row + c);
        norm_output<T, W, RMS>(out, v, w, b, add, one, m, s, row, c);
    }
}

template <typename T, int ITEMS, bool RMS>
static void norm_warps(Device *d, T *sum, T *out, float *mean, float *rstd, const T *x, const T *delta, const T *w,
                       const T *b, const T *add, float eps, float one, int N, int C) {
    constexpr int W = 16 / (int)sizeof(T);
    LAUNCH((norm_warp_kernel<T, W, ITEMS, RMS>), (unsigned)cuda_ceil((size_t)N, NORM_WARPS), NORM_WARPS * 32, 0,
           d->stream, sum, out, mean, rstd, x, delta, w, b, add, eps, one, N, C);
}

template <typename T, bool RMS> static void norm_forward_of(Device *d, const Norm *n) {
    constexpr int W = 16 / (int)sizeof(T);
    const int N = n->rows, C = n->channels;
    const T *x = (const T *)n->x, *delta = (const T *)n->delta, *w = (const T *)n->w;
    const T *b = RMS ? NULL : (const T *)n->b, *add = RMS ? (const T *)n->add : NULL;
    const float one = (float)n->plus_one;
    T *sum = delta ? (T *)n->sum : NULL, *out = (T *)n->out;
    float *mean = (float *)n->mean, *rstd = (float *)n->rstd;
    const bool wide = cuda_wide<T>((size_t)C, sum, out, x, delta, w, b, add);
    const int items = (int)cuda_ceil((size_t)C, 32 * W);
    if (!wide) {
        LAUNCH((norm_block_kernel<T, 1, RMS>), (unsigned)N, NORM_BLOCK, 0, d->stream, sum, out, mean, rstd, x, delta, w,
               b, add, n->eps, one, C);
    } else if (items == 1) norm_warps<T, 1, RMS>(d, sum, out, mean, rstd, x, delta, w, b, add, n->eps, one, N, C);
    else if (items == 2) norm_warps<T, 2, RMS>(d, sum, out, mean, rstd, x, delta, w, b, add, n->eps, one, N, C);
    else if (items == 3) norm_warps<T, 3, RMS>(d, sum, out, mean, rstd, x, delta, w, b, add, n->eps, one, N, C);
    else if (items == 4) norm_warps<T, 4, RMS>(d, sum, out, mean, rstd, x, delta, w, b, add, n->eps, one, N, C);
    else if (items <= 8) norm_warps<T, 8, RMS>(d, sum, out, mean, rstd, x, delta, w, b, add, n->eps, one, N, C);
    else {
        LAUNCH((norm_block_kernel<T, W, RMS>), (unsigned)N, NORM_BLOCK, 0, d->stream, sum, out, mean, rstd, x, delta, w,
               b, add, n->eps, one, C);
    }
    CUDA_LAUNCHED(d, "norm_forward", "N %d, C %d", N, C);
}

template <typename T> static void cuda_norm_forward(Device *d, const Norm *n) {
    if (n->rows == 0) return;
    if (n->kind == NORM_RMS) norm_forward_of<T, true>(d, n);
    else norm_forward_of<T, false>(d, n);
}

/* ---- sums over rows ---------------------------------------------------------------------------------------------- */

enum { PARTS_COLUMNS = 32, PARTS_LANES = 8 };

/* to[c] += sum over parts of partial[part, c] in a fixed order, for c < C. The parts are `stride` floats apart. */
static __global__ void parts_sum_kernel(float *to, const float *__restrict__ partial, int parts, int C, int stride) {
    __shared__ float sums[PARTS_LANES][PARTS_COLUMNS];
    const int c = blockIdx.x * PARTS_COLUMNS + threadIdx.x;
    float sum = 0;
    if (c < C)
        for (int part = threadIdx.y; part < parts; part += PARTS_LANES) sum += partial[(size_t)part * stride + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || c >= C) return;
    sum = sums[0][threadIdx.x];
#pragma unroll
    for (int lane = 1; lane < PARTS_LANES; lane++) sum += sums[lane][threadIdx.x];
    to[c] += sum;
}

static inline void parts_sum(Device *d, float *to, const float *partial, int parts, int C, int stride) {
    LAUNCH(parts_sum_kernel, (unsigned)cuda_ceil((size_t)C, PARTS_COLUMNS), dim3(PARTS_COLUMNS, PARTS_LANES), 0,
           d->stream, to, partial, parts, C, stride);
    CUDA_LAUNCHED(d, "parts_sum", "parts %d, C %d", parts, C);
}

/* The number of parts into which N rows are divided. It depends on N alone. */
static inline int norm_parts(int N, int rows, int most) {
    const int parts = (N + rows - 1) / rows;
    return parts < 1 ? 1 : parts < most ? parts : most;
}

/* partial[part, c] = sum of x over the part's rows. A block takes 32 W columns of one part, 8 rows at a time. */
template <typename T, int W>
__global__ void column_sum_kernel(float *__restrict__ partial, const T *__restrict__ x, int N, int C, int parts) {
    __shared__ float sums[PARTS_LANES][PARTS_COLUMNS * W];
    const int c = (blockIdx.x * PARTS_COLUMNS + threadIdx.x) * W, part = blockIdx.y;
    const int first = (int)((int64_t)N * part / parts), last = (int)((int64_t)N * (part + 1) / parts);
    float sum[W], v[W];
#pragma unroll
    for (int k = 0; k < W; k++) sum[k] = 0;
    if (c < C)
        for (int i = first + (int)threadIdx.y; i < last; i += PARTS_LANES) {
            lane_load(v, x + (size_t)i * C + c);
#pragma unroll
            for (int k = 0; k < W; k++) sum[k] += v[k];
        }
#pragma unroll
    for (int k = 0; k < W; k++) sums[threadIdx.y][threadIdx.x * W + k] = sum[k];
    __syncthreads();
    const int thread = threadIdx.y * PARTS_COLUMNS + threadIdx.x;
    for (int at = thread; at < PARTS_COLUMNS * W; at += PARTS_COLUMNS * PARTS_LANES) {
        const int column = blockIdx.x * PARTS_COLUMNS * W + at;
        if (column >= C) continue;
        float total = sums[0][at];
#pragma unroll
        for (int lane = 1; lane < PARTS_LANES; lane++) total += sums[lane][at];
        partial[(size_t)part * C + column] = total;
    }
}

/* db[c] += sum of column c of x[N,C] */
template <typename T> static void column_sums(Device *d, float *db, const T *x, int N, int C) {
    constexpr int W = 16 / (int)sizeof(T);
    const int parts = norm_parts(N, 64, 128);
    float *partial = cuda_scratch_of<float>(d, (size_t)parts * (size_t)C, "sums of columns");
    if (!partial || N == 0) return;
    const dim3 block(PARTS_COLUMNS, PARTS_LANES);
    if (cuda_wide<T>((size_t)C, x)) {
        LAUNCH((column_sum_kernel<T, W>), dim3((unsigned)cuda_ceil((size_t)C, PARTS_COLUMNS * W), (unsigned)parts),
               block, 0, d->stream, partial, x, N, C, parts);
    } else {
        LAUNCH((column_sum_kernel<T, 1>), dim3((unsigned)cuda_ceil((size_t)C, PARTS_COLUMNS), (unsigned)parts), block,
               0, d->stream, partial, x, N, C, parts);
    }
    CUDA_LAUNCHED(d, "column_sums", "N %d, C %d", N, C);
    parts_sum(d, db, partial, parts, C, C);
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

/* Two sums over a block at once. Every thread gets the results. */
template <int THREADS> __device__ static inline void block_sum_pair(float &a, float &b) {
    a = warp_sum(a);
    b = warp_sum(b);
    if constexpr (THREADS > 32) {
        __shared__ float part[2][THREADS / 32];
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        if (lane == 0) {
            part[0][warp] = a;
            part[1][warp] = b;
        }
        __syncthreads();
        a = warp_sum(lane < THREADS / 32 ? part[0][lane] : 0.0f);
        b = warp_sum(lane < THREADS / 32 ? part[1][lane] : 0.0f);
        __syncthreads();
    }
}

/* With n = (x - mean) rstd and g = dout w:  dx += rstd (g - mean(g) - n mean(g n)),  dw += dout n,  db += dout.
 * A thread owns ITEMS words of W columns. partial: (parts, 2, C), the sums for dw and for db. RMS: mean is not used,
 * `one` is added to w, and the sums for db are not written. FRESH: dx = instead of +=. */
template <typename T, int W, int ITEMS, int THREADS, bool RMS, bool FRESH>
__global__ void __launch_bounds__(THREADS)
    norm_backward_kernel(T *__restrict__ dx, float *__restrict__ partial, const T *__restrict__ dout,
                         const T *__restrict__ x, const float *__restrict__ mean, const float *__restrict__ rstd,
                         const T *__restrict__ w, float one, int N, int C, int parts) {
    const int part = blockIdx.x;
    const int first = (int)((int64_t)N * part / parts), last = (int)((int64_t)N * (part + 1) / parts);
    float dw[ITEMS][W], db[ITEMS][W];
#pragma unroll
    for (int item = 0; item < ITEMS; item++)
#pragma unroll
        for (int k = 0; k < W; k++) dw[item][k] = db[item][k] = 0;
    for (int i = first; i < last; i++) {
        const size_t row = (size_t)i * C;
        const float m = RMS ? 0.0f : mean[i], s = rstd[i];
        float g[ITEMS][W], n[ITEMS][W], g_sum = 0, gn_sum = 0;
#pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            const int c = (item * THREADS + (int)threadIdx.x) * W;
            if (c >= C) continue;
            float scale[W];
            lane_load(g[item], dout + row + c);
            lane_load(n[item], x + row + c);
            lane_load(scale, w + c);
#pragma unroll
            for (int k = 0; k < W; k++) {
                n[item][k] = (n[item][k] - m) * s;
                dw[item][k] += g[item][k] * n[item][k];
                if (!RMS) db[item][k] += g[item][k];
                g[item][k] *= RMS ? scale[k] + one : scale[k];
                if (!RMS) g_sum += g[item][k];
                gn_sum += g[item][k] * n[item][k];
            }
        }
        block_sum_pair<THREADS>(g_sum, gn_sum);
        g_sum = RMS ? 0.0f : g_sum / C;
        gn_sum /= C;
#pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            const int c = (item * THREADS + (int)threadIdx.x) * W;
            if (c >= C) continue;
            float o[W] = {0};
            if (!FRESH) lane_load(o, dx + row + c);
#pragma unroll
            for (int k = 0; k < W; k++) o[k] += s * (g[item][k] - g_sum - n[item][k] * gn_sum);
            lane_store(dx + row + c, o);
        }
    }
#pragma unroll
    for (int item = 0; item < ITEMS; item++) {
        const int c = (item * THREADS + (int)threadIdx.x) * W;
        if (c >= C) continue;
#pragma unroll
        for (int k = 0; k < W; k++) {
            partial[(size_t)part * 2 * C + c + k] = dw[item][k];
            if (!RMS) partial[((size_t)part * 2 + 1) * C + c + k] = db[item][k];
        }
    }
}

/* The same for rows of any length and alignment: the sums of a thread's columns stay in `partial`, in the cache. */
template <typename T, bool RMS, bool FRESH>
__global__ void norm_backward_any_kernel(T *__restrict__ dx, float *__restrict__ partial, const T *__restrict__ dout,
                                         const T *__restrict__ x, const float *__restrict__ mean,
                                         const float *__restrict__ rstd, const T *__restrict__ w, float one, int N,
                                         int C, int parts) {
    const int part = blockIdx.x;
    const int first = (int)((int64_t)N * part / parts), last = (int)((int64_t)N * (part + 1) / parts);
    float *pw = partial + (size_t)part * 2 * C, *pb = pw + C;
    for (int c = threadIdx.x; c < C; c += NORM_BLOCK) pw[c] = pb[c] = 0;
    for (int i = first; i < last; i++) {
        const T *doi = dout + (size_t)i * C, *xi = x + (size_t)i * C;
        T *dxi = dx + (size_t)i * C;
        const float m = RMS ? 0.0f : mean[i], s = rstd[i];
        float g_sum = 0, gn_sum = 0;
        for (int c = threadIdx.x; c < C; c += NORM_BLOCK) {
            const float o = to_float(doi[c]), n = (to_float(xi[c]) - m) * s;
            const float g = o * (RMS ? to_float(w[c]) + one : to_float(w[c]));
            pw[c] += o * n;
            if (!RMS) pb[c] += o;
            if (!RMS) g_sum += g;
            gn_sum += g * n;
        }
        block_sum_pair<NORM_BLOCK>(g_sum, gn_sum);
        g_sum = RMS ? 0.0f : g_sum / C;
        gn_sum /= C;
        for (int c = threadIdx.x; c < C; c += NORM_BLOCK) {
            const float n = (to_float(xi[c]) - m) * s, before = FRESH ? 0.0f : to_float(dxi[c]);
            const float g = to_float(doi[c]) * (RMS ? to_float(w[c]) + one : to_float(w[c]));
            dxi[c] = from_float<T>(before + s * (g - g_sum - n * gn_sum));
        }
    }
}

template <typename T, bool RMS, bool FRESH>
static void norm_backward_of(Device *d, const Norm *n, float *partial, int parts) {
    constexpr int W = 16 / (int)sizeof(T);
    const int N = n->rows, C = n->channels, words = C / W;
    const T *dout = (const T *)n->dout, *x = (const T *)n->x, *w = (const T *)n->w;
    const float *mean = (const float *)n->mean, *rstd = (const float *)n->rstd;
    T *dx = (T *)n->dx;
    const float one = (float)n->plus_one;
#define BACKWARD(ITEMS, THREADS)                                                                                       \
    LAUNCH((norm_backward_kernel<T, W, ITEMS, THREADS, RMS, FRESH>), (unsigned)parts, THREADS, 0, d->stream, dx,       \
           partial, dout, x, mean, rstd, w, one, N, C, parts)
    if (!cuda_wide<T>((size_t)C, dx, dout, x, w) || words > 1024) {
        LAUNCH((norm_backward_any_kernel<T, RMS, FRESH>), (unsigned)parts, NORM_BLOCK, 0, d->stream, dx, partial, dout,
               x, mean, rstd, w, one, N, C, parts);
    } else if (words <= 32) BACKWARD(1, 32);
    else if (words <= 128) BACKWARD(1, 128);
    else if (words <= 256) BACKWARD(1, 256);
    else if (words <= 512) BACKWARD(2, 256);
    else BACKWARD(4, 256);
#undef BACKWARD
}

template <typename T> static void cuda_norm_backward(Device *d, const Norm *n) {
    const int N = n->rows, C = n->channels;
    const int parts = norm_parts(N, NORM_PART_ROWS, NORM_PARTS_MOST);
    float *partial = cuda_scratch_of<float>(d, (size_t)parts * 2 * (size_t)C, "gradients of a norm");
    if (!partial || N == 0) return;
    if (n->kind == NORM_RMS && n->fresh) norm_backward_of<T, true, true>(d, n, partial, parts);
    else if (n->kind == NORM_RMS) norm_backward_of<T, true, false>(d, n, partial, parts);
    else if (n->fresh) norm_backward_of<T, false, true>(d, n, partial, parts);
    else norm_backward_of<T, false, false>(d, n, partial, parts);
    CUDA_LAUNCHED(d, "norm_backward", "N %d, C %d", N, C);
    if (n->dw) parts_sum(d, (float *)n->dw, partial, parts, C, 2 * C);
    if (n->dw && n->kind == NORM_LAYER) parts_sum(d, (float *)n->db, partial + C, parts, C, 2 * C);
}

#endif
