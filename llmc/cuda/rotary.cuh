/* rotary.cuh - rotary positions on the GPU, and the RMSNorm of queries and keys before them: forward and backward.
 *
 * The channels of a norm's group, or of one head if there is no norm, are divided into units. A unit is W channels j ..
 * of the first half of the rotated ones together with their partners at j + R/2, or W channels that are not rotated. So
 * a thread that has a unit can rotate it in place. Memory is accessed 16 bytes at a time if W > 1.
 *
 *   groups of one head     a group of lanes, as many as a head has units, up to 32
 *   groups of whole rows   a block
 *
 * Each thread reads its units twice, the second time from the cache. Results are rounded once, after the rotation.
 *
 * Backward: a block owns a fixed part of the rows. The sums for a norm's weights are kept per group of lanes in shared
 * memory, or per block in the scratch memory, and are added in a fixed order (as in norm.cuh).
 */
#ifndef LLMC_CUDA_ROTARY_CUH
#define LLMC_CUDA_ROTARY_CUH

#include "../model/backend.h" /* Rotary, Floats, Ints */
#include "common.cuh"         /* Device, lane_load, CUDA_LAUNCHED, cuda_wide, ... */
#include "norm.cuh"           /* parts_sum, NORM_PARTS_MOST, NORM_PART_ROWS, norm_parts */
#include "ptx.cuh"            /* LAUNCH, SHARED_DYNAMIC */

enum { ROTARY_THREADS = 256 };

/* ---- angles ------------------------------------------------------------------------------------------------------ */

__global__ static void rotary_table_kernel(float *__restrict__ table, const int32_t *__restrict__ position,
                                           const float *__restrict__ frequency, float factor, int N, int half,
                                           int stride) {
    for (size_t at = (size_t)blockIdx.x * ROTARY_THREADS + threadIdx.x; at < (size_t)N * half;
         at += (size_t)gridDim.x * ROTARY_THREADS) {
        const size_t i = at / half, j = at % half;
        float *row = table + i * stride, sine, cosine;
        sincosf((float)position[i] * frequency[j], &sine, &cosine);
        row[j] = cosine * factor;
        row[half + j] = sine * factor;
    }
}

template <typename T>
static void cuda_rotary_table(Device *d, Floats *table, const Ints *position, const Floats *frequency, float factor,
                              int N, int half, int stride) {
    if (N == 0 || half == 0) return;
    LAUNCH(rotary_table_kernel, cuda_blocks(d, (size_t)N * (size_t)half, ROTARY_THREADS), ROTARY_THREADS, 0, d->stream,
           (float *)table, (const int32_t *)position, (const float *)frequency, factor, N, half, stride);
    CUDA_LAUNCHED(d, "rotary_table", "N %d, R %d", N, 2 * half);
}

/* ---- units ------------------------------------------------------------------------------------------------------- */

/* How a launch divides its work; derived from Rotary. */
struct RotaryPlan {
    int half;          /* rotated pairs of a head; 0: no rotation */
    int each;          /* units of a head */
    int q_groups, all; /* groups of the queries of a row, of its queries and keys */
    int lanes;         /* threads per group: a power of two up to 32, or a block */
};

/* Group g of a row: n channels from channel `at` on. Its weights' gradients are at column `sums` of the partial sums. */
template <typename T> struct RotaryGroup {
    int n, at, sums;
    const T *w;
};

template <typename T>
__device__ static inline RotaryGroup<T> rotary_group(const Rotary &r, const RotaryPlan &p, int g) {
    if (g < p.q_groups) return RotaryGroup<T>{r.q_group, g * r.q_group, 0, (const T *)r.qw};
    const int at = r.heads * r.head_size + (g - p.q_groups) * r.k_group;
    return RotaryGroup<T>{r.k_group, at, r.q_group, (const T *)r.kw};
}

/* A unit of a group: W channels from `low` on and, in a pair, those from `high` on, which turn by angle j and those
 * after it. */
struct RotaryUnit {
    int low, high, j;
    bool pair;
};

template <int W> __device__ static inline RotaryUnit rotary_unit(const RotaryPlan &p, int head_size, int u) {
    const int pairs = p.half / W, first = u / p.each * head_size, k = u % p.each;
    if (k < pairs) return RotaryUnit{first + k * W, first + k * W + p.half, k * W, true};
    return RotaryUnit{first + 2 * p.half + (k - pairs) * W, 0, 0, false};
}

template <int W, typename T>
__device__ static inline void unit_load(float (&x)[2][W], const T *from, const RotaryUnit &u) {
    lane_load(x[0], from + u.low);
    if (u.pair) lane_load(x[1], from + u.high);
    else
#pragma unroll
        for (int k = 0; k < W; k++) x[1][k] = 0;
}

template <int W, typename T>
__device__ static inline void unit_store(T *to, const float (&x)[2][W], const RotaryUnit &u) {
    lane_store(to + u.low, x[0]);
    if (u.pair) lane_store(to + u.high, x[1]);
}

/* Rotates a unit by the angles of a row of the table. sign: 1, or -1 for the inverse. */
template <int W>
__device__ static inline void unit_turn(float (&x)[2][W], const float *table, int half, const RotaryUnit &u,
                                        float sign) {
    float c[W], s[W];
    if (!u.pair) return;
    lane_load(c, table + u.j);
    lane_load(s, table + half + u.j);
#pragma unroll
    for (int k = 0; k < W; k++) {
        const float a = x[0][k], b = x[1][k], sine = sign * s[k];
        x[0][k] = a * c[k] - b * sine;
        x[1][k] = b * c[k] + a * sine;
    }
}

/* Sums x over the threads of a group. Every thread of the block must call it. */
template <bool ROW> __device__ static inline float group_sum(float x, int lanes) {
    if constexpr (ROW) return block_sum<ROTARY_THREADS>(x);
    for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

/* Normalises, if there are weights, and rotates one group. Grid: groups of all rows, ROW: one per block. */
template <typename T, int W, bool ROW>
__global__ static void __launch_bounds__(ROTARY_THREADS)
    rotary_forward_kernel(const Rotary r, const RotaryPlan p, float sign) {
    const size_t item = ROW ? blockIdx.x : ((size_t)blockIdx.x * ROTARY_THREADS + threadIdx.x) / p.lanes;
    const int first = (int)threadIdx.x % p.lanes;
    const bool live = item < (size_t)r.rows * p.all;
    const size_t row = live ? item / p.all : 0;
    const RotaryGroup<T> g = rotary_group<T>(r, p, live ? (int)(item % p.all) : 0);
    const int units = live ? g.n / r.head_size * p.each : 0;
    const float *table = r.table ? (const float *)r.table + row * r.table_stride : NULL, one = (float)r.plus_one;
    T *qk = (T *)r.qk + row * r.stride + g.at, *before = (T *)r.before;
    if (before) before += row * r.before_stride + g.at;
    float x[2][W], s = 1;
    if (r.qw) {
        float squares = 0;
        for (int i = first; i < units; i += p.lanes) {
            const RotaryUnit u = rotary_unit<W>(p, r.head_size, i);
            unit_load(x, qk, u);
            if (before) unit_store(before, x, u);
#pragma unroll
            for (int k = 0; k < W; k++) squares += x[0][k] * x[0][k] + x[1][k] * x[1][k];
        }
        s = 1.0f / sqrtf(group_sum<ROW>(squares, p.lanes) / g.n + r.eps);
        if (r.rstd && live && first == 0) ((float *)r.rstd)[item] = s;
    }
    for (int i = first; i < units; i += p.lanes) {
        const RotaryUnit u = rotary_unit<W>(p, r.head_size, i);
        unit_load(x, qk, u);
        if (r.qw) {
            float w[2][W];
            unit_load(w, g.w, u);
#pragma unroll
            for (int k = 0; k < W; k++) {
                x[0][k] *= s * (w[0][k] + one);
                x[1][k] *= s * (w[1][k] + one);
            }
        }
        unit_turn(x, table, p.half, u, sign);
        unit_store(qk, x, u);
    }
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

/* With n = x rstd and g = dy (w + one), where dy is the gradient after the inverse rotation: dx = rstd (g - n mean(g
 * n)) over a group, dw += dy n. Grid (parts). partial: (parts, q_group + k_group). Shared memory, not for ROW: as many
 * floats for each group of lanes. */
template <typename T, int W, bool ROW>
__global__ static void __launch_bounds__(ROTARY_THREADS)
    rotary_backward_kernel(const Rotary r, const RotaryPlan p, float *__restrict__ partial, int parts) {
    SHARED_DYNAMIC(float, shared);
    const int part = (int)blockIdx.x, columns = r.q_group + r.k_group;
    const int start = (int)((int64_t)r.rows * part / parts), end = (int)((int64_t)r.rows * (part + 1) / parts);
    const int slots = ROTARY_THREADS / p.lanes, slot = (int)threadIdx.x / p.lanes, first = (int)threadIdx.x % p.lanes;
    float *total = partial + (size_t)part * columns, *sums = ROW ? total : shared + slot * columns;
    const float one = (float)r.plus_one;
    for (int c = first; c < columns; c += p.lanes) sums[c] = 0;
    __syncthreads();
    const int items = (end - start) * p.all;
    for (int base = 0; base < items; base += slots) {
        const bool live = base + slot < items;
        const int item = live ? base + slot : 0;
        const size_t row = (size_t)(start + item / p.all);
        const RotaryGroup<T> g = rotary_group<T>(r, p, item % p.all);
        const int units = live ? g.n / r.head_size * p.each : 0;
        const float *table = r.table ? (const float *)r.table + row * r.table_stride : NULL;
        const float s = ((const float *)r.rstd)[row * p.all + item % p.all];
        const T *before = (const T *)r.before + row * r.before_stride + g.at;
        T *qk = (T *)r.qk + row * r.stride + g.at;
        float d[2][W], n[2][W], w[2][W], mean = 0;
        for (int i = first; i < units; i += p.lanes) {
            const RotaryUnit u = rotary_unit<W>(p, r.head_size, i);
            unit_load(d, qk, u);
            unit_load(n, before, u);
            unit_load(w, g.w, u);
            unit_turn(d, table, p.half, u, -1);
            float *low = sums + g.sums + u.low, *high = sums + g.sums + u.high;
#pragma unroll
            for (int k = 0; k < W; k++) {
                const float a = d[0][k] * (n[0][k] * s), b = d[1][k] * (n[1][k] * s);
                low[k] += a;
                if (u.pair) high[k] += b;
                mean += a * (w[0][k] + one) + b * (w[1][k] + one);
            }
        }
        mean = group_sum<ROW>(mean, p.lanes) / g.n;
        for (int i = first; i < units; i += p.lanes) {
            const RotaryUnit u = rotary_unit<W>(p, r.head_size, i);
            unit_load(d, qk, u);
            unit_load(n, before, u);
            unit_load(w, g.w, u);
            unit_turn(d, table, p.half, u, -1);
#pragma unroll
            for (int k = 0; k < W; k++) {
                d[0][k] = s * (d[0][k] * (w[0][k] + one) - n[0][k] * s * mean);
                d[1][k] = s * (d[1][k] * (w[1][k] + one) - n[1][k] * s * mean);
            }
            unit_store(qk, d, u);
        }
    }
    if (ROW) return;
    __syncthreads();
    for (int c = (int)threadIdx.x; c < columns; c += ROTARY_THREADS) {
        float sum = shared[c];
        for (int i = 1; i < slots; i++) sum += shared[i * columns + c];
        total[c] = sum;
    }
}

/* ---- launches -------------------------------------------------------------------------------------------------- */

/* True if all rows, heads, halves of heads and weights can be accessed 16 bytes at a time. */
template <typename T> static inline bool rotary_wide(const Rotary *r, int half) {
    constexpr int W = 16 / (int)sizeof(T);
    const int columns[] = {r->head_size, half, r->stride, r->before ? r->before_stride : 0};
    for (int n : columns)
        if (n % W) return false;
    return cuda_wide<T>((size_t)W, r->qk, r->before, r->qw, r->kw) &&
           (half == 0 || cuda_wide<float>((size_t)r->table_stride, r->table));
}

template <int W> static inline RotaryPlan rotary_plan(const Rotary *r, int half, bool whole_rows) {
    RotaryPlan p;
    p.half = half;
    p.each = half / W + (r->qw ? (r->head_size - 2 * half) / W : 0);
    p.q_groups = r->heads * r->head_size / r->q_group;
    p.all = p.q_groups + r->kv_heads * r->head_size / r->k_group;
    p.lanes = whole_rows ? ROTARY_THREADS : 1;
    while (p.lanes < p.each && p.lanes < 32) p.lanes *= 2;
    return p;
}

/* A group per block, or per group of lanes. */
static inline unsigned rotary_blocks(const Rotary *r, const RotaryPlan &p) {
    return (unsigned)cuda_ceil((size_t)r->rows * p.all * p.lanes, ROTARY_THREADS);
}

template <typename T, int W, bool ROW> static void rotary_forward_of(Device *d, const Rotary *r, int half, float sign) {
    const RotaryPlan p = rotary_plan<W>(r, half, ROW);
    if (p.each == 0) return;
    LAUNCH((rotary_forward_kernel<T, W, ROW>), rotary_blocks(r, p), ROTARY_THREADS, 0, d->stream, *r, p, sign);
    CUDA_LAUNCHED(d, "rotary_forward", "N %d, H %d/%d, D %d", r->rows, r->heads, r->kv_heads, r->head_size);
}

template <typename T, int W, bool ROW> static void rotary_backward_of(Device *d, const Rotary *r, int half) {
    const RotaryPlan p = rotary_plan<W>(r, half, ROW);
    const int columns = r->q_group + r->k_group, parts = norm_parts(r->rows, NORM_PART_ROWS, NORM_PARTS_MOST);
    const size_t bytes = ROW ? 0 : (size_t)(ROTARY_THREADS / p.lanes) * (size_t)columns * sizeof(float);
    float *partial = cuda_scratch_of<float>(d, (size_t)parts * (size_t)columns, "gradients of the norms of heads");
    if (!partial) return;
    LAUNCH((rotary_backward_kernel<T, W, ROW>), (unsigned)parts, ROTARY_THREADS, bytes, d->stream, *r, p, partial,
           parts);
    CUDA_LAUNCHED(d, "rotary_backward", "N %d, H %d/%d, D %d", r->rows, r->heads, r->kv_heads, r->head_size);
    if (!r->dqw) return;
    parts_sum(d, (float *)r->dqw, partial, parts, r->q_group, columns);
    parts_sum(d, (float *)r->dkw, partial + r->q_group, parts, r->k_group, columns);
}

/* Calls f<T, W, ROW> for the alignment and the groups of a problem. */
#define ROTARY_CALL(f, wide, row, ...)                                                                                 \
    do {                                                                                                               \
        constexpr int word_ = 16 / (int)sizeof(T);                                                                     \
        if ((wide) && (row)) f<T, word_, true>(__VA_ARGS__);                                                           \
        else if (wide) f<T, word_, false>(__VA_ARGS__);                                                                \
        else if (row) f<T, 1, true>(__VA_ARGS__);                                                                      \
        else f<T, 1, false>(__VA_ARGS__);                                                                              \
    } while (0)

/* The rotation and the norm, or the inverse rotation; see Rotary in backend.h. */
template <typename T> static void rotary_launch(Device *d, const Rotary *from, bool backward) {
    Rotary r = *from;
    const int half = r.table ? r.rotated / 2 : 0;
    if (!r.qw) { /* a group is a head */
        r.q_group = r.k_group = r.head_size;
        r.before = NULL;
    }
    const bool wide = rotary_wide<T>(&r, half), row = r.q_group != r.head_size || r.k_group != r.head_size;
    if (r.rows == 0) return;
    if (backward && r.qw) ROTARY_CALL(rotary_backward_of, wide, row, d, &r, half);
    else ROTARY_CALL(rotary_forward_of, wide, row, d, &r, half, backward ? -1.0f : 1.0f);
}
#undef ROTARY_CALL

template <typename T> static void cuda_rotary_forward(Device *d, const Rotary *r) { rotary_launch<T>(d, r, false); }
template <typename T> static void cuda_rotary_backward(Device *d, const Rotary *r) { rotary_launch<T>(d, r, true); }

#endif
