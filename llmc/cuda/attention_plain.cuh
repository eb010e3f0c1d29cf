/* attention_plain.cuh - attention, forward and backward, in float32 arithmetic without tensor cores: for float32
 * storage, and for bf16 whose head size or strides the tensor-core kernels do not support.
 *
 * The algorithm, the three kernels and their order of summation are those of attention_mma.cuh. A block is 128
 * threads and a strip is 32 rows. The operands of a tile are in shared memory as float, rows D + 1 apart, so that 16
 * rows read at one channel are in 16 banks. In a tile of 32 x 32 scores, thread (y, x) = (tid / 16, tid % 16) has rows
 * 4y .. 4y+3 and columns x and x + 16. In rows of D channels it has the same rows and channels x, x + 16, x + 32, ...
 */
#ifndef LLMC_CUDA_ATTENTION_PLAIN_CUH
#define LLMC_CUDA_ATTENTION_PLAIN_CUH

#include "../model/backend.h" /* Attention */
#include "common.cuh"         /* from_float, to_float */
#include "ptx.cuh"            /* SHARED_DYNAMIC */
#include "segments.cuh"       /* keys_seen, map_rows, RowMap, keys_from, ... */

enum { PLAIN = 32, PLAIN_THREADS = 128, PLAIN_WEIGHTS = PLAIN * (PLAIN + 1) };

__host__ __device__ constexpr int plain_tile(int D) { return PLAIN * (D + 1); } /* floats */

/* Loads PLAIN rows of x as float, from row `first` of the map on. Missing rows and channels become zeros. */
template <int D, typename T>
__device__ static inline void plain_load(float *tile, const T *x, int stride, RowMap map, int first, int rows,
                                         int head_size) {
    for (int i = (int)threadIdx.x; i < PLAIN * D; i += PLAIN_THREADS) {
        const int row = i / D, c = i % D;
        const bool valid = row < rows && c < head_size;
        tile[row * (D + 1) + c] = valid ? to_float(x[(size_t)map.row(first + row) * (size_t)stride + (size_t)c]) : 0;
    }
}

/* s[r][c] = own row 4y + r . other row x + 16c */
template <int D> __device__ static inline void plain_scores(float (&s)[4][2], const float *own, const float *other) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int r = 0; r < 4; r++) s[r][0] = s[r][1] = 0;
#pragma unroll 4
    for (int d = 0; d < D; d++) {
        const float left = other[x * (D + 1) + d], right = other[(x + 16) * (D + 1) + d];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float q = own[(4 * y + r) * (D + 1) + d];
            s[r][0] = fmaf(q, left, s[r][0]);
            s[r][1] = fmaf(q, right, s[r][1]);
        }
    }
}

__device__ static inline void plain_weights(float *weights, const float (&p)[4][2]) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        weights[(4 * y + r) * (PLAIN + 1) + x] = p[r][0];
        weights[(4 * y + r) * (PLAIN + 1) + x + 16] = p[r][1];
    }
}

/* out row 4y + r += sum over j of weights[4y + r][j] other row j */
template <int D>
__device__ static inline void plain_add(float (&out)[4][D / 16], const float *weights, const float *other) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
    for (int j = 0; j < PLAIN; j++) {
        float p[4];
#pragma unroll
        for (int r = 0; r < 4; r++) p[r] = weights[(4 * y + r) * (PLAIN + 1) + j];
#pragma unroll
        for (int c = 0; c < D / 16; c++) {
            const float v = other[j * (D + 1) + x + 16 * c];
#pragma unroll
            for (int r = 0; r < 4; r++) out[r][c] = fmaf(p[r], v, out[r][c]);
        }
    }
}

template <int D, typename T>
__device__ static inline void plain_store(T *to, int stride, int rows, int head_size, const float (&out)[4][D / 16],
                                          const float (&scale)[4]) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < D / 16; c++)
            if (4 * y + r < rows && x + 16 * c < head_size)
                to[(size_t)(4 * y + r) * (size_t)stride + (size_t)(x + 16 * c)] = from_float<T>(out[r][c] * scale[r]);
}

template <int N> __device__ static inline void plain_zero(float (&x)[4][N]) {
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < N; c++) x[r][c] = 0;
}

/* Maximum and sum over the 16 threads that share rows. */
__device__ static inline float plain_max(float x) {
    for (int offset = 8; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}
__device__ static inline float plain_sum(float x) {
    for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

/* The score of a query and a key: scale times their product, and with a cap, cap tanh(that / cap). slope: the derivative
 * of the cap. */
template <bool EXTRAS> __device__ static inline float plain_score(const Attention &a, float dot, float &slope) {
    const float score = dot * a.scale;
    slope = 1;
    if (!EXTRAS || a.cap == 0) return score;
    const float bent = tanhf(score * (1 / a.cap));
    slope = 1 - bent * bent;
    return a.cap * bent;
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

template <int D> __host__ __device__ constexpr size_t plain_forward_bytes() {
    return (2 * plain_tile(D) + PLAIN_WEIGHTS) * sizeof(float);
}

/* Computes out and lse. Grid (strips, heads). Shared memory: Q, one tile for K and V in turn, P. */
template <typename T, int D, bool EXTRAS>
__global__ static void __launch_bounds__(PLAIN_THREADS) attention_forward_plain_kernel(const Attention a) {
    SHARED_DYNAMIC(float, shared);
    float *tile_q = shared, *tile = tile_q + plain_tile(D), *weights = tile + plain_tile(D);
    Strip strip;
    if (!strip_find(&strip, a, (int)blockIdx.x, PLAIN)) return;
    const int head = (int)blockIdx.y, kv = head / (a.heads / a.kv_heads);
    const int row = strip.segment.start + strip.first, y = threadIdx.x / 16, x = threadIdx.x % 16;
    const T *k = (const T *)a.k + (size_t)kv * a.head_size, *v = (const T *)a.v + (size_t)kv * a.head_size;
    const RowMap map = map_keys(strip.segment);
    const int keys = keys_seen(strip.segment, strip.first + strip.rows - 1);
    const int from = keys_from<EXTRAS>(a, keys_seen(strip.segment, strip.first)) / PLAIN * PLAIN;
    const int seen = keys_seen(strip.segment, strip.first + 4 * y); /* keys seen by this thread's first row */
    plain_load<D>(tile_q, (const T *)a.q + (size_t)head * a.head_size, a.q_stride, map_rows(row), 0, strip.rows,
                  a.head_size);
    float out[4][D / 16], most[4], sum[4], scale[4];
    plain_zero(out);
    for (int r = 0; r < 4; r++) {
        most[r] = -INFINITY;
        sum[r] = 0;
    }
    for (int key = from; key < keys; key += PLAIN) {
        float s[4][2];
        plain_load<D>(tile, k, a.kv_stride, map, key, keys - key, a.head_size);
        __syncthreads();
        plain_scores<D>(s, tile_q, tile);
#pragma unroll
        for (int r = 0; r < 4; r++) { /* m' = max(m, s), p = e^(s - m'); earlier sums are multiplied by e^(m - m') */
            for (int c = 0; c < 2; c++) {
                const int at = key + x + 16 * c;
                const bool visible = at < seen + r && at >= keys_from<EXTRAS>(a, seen + r);
                float slope;
                s[r][c] = visible ? plain_score<EXTRAS>(a, s[r][c], slope) : -INFINITY;
            }
            const float next = fmaxf(most[r], plain_max(fmaxf(s[r][0], s[r][1])));
            const float base = EXTRAS && next == -INFINITY ? 0 : next; /* the row may see no key of the first tile */
            const float alpha = expf(most[r] - base);
            for (int c = 0; c < 2; c++) s[r][c] = expf(s[r][c] - base);
            sum[r] = sum[r] * alpha + s[r][0] + s[r][1];
            most[r] = next;
#pragma unroll
            for (int c = 0; c < D / 16; c++) out[r][c] *= alpha;
        }
        plain_weights(weights, s);
        __syncthreads();
        plain_load<D>(tile, v, a.kv_stride, map, key, keys - key, a.head_size);
        __syncthreads();
        plain_add<D>(out, weights, tile);
        __syncthreads();
    }
    for (int r = 0; r < 4; r++) {
        sum[r] = plain_sum(sum[r]);
        scale[r] = 1 / sum[r];
        if (a.lse && x == 0 && 4 * y + r < strip.rows)
            ((float *)a.lse)[(size_t)(row + 4 * y + r) * a.heads + head] = most[r] + logf(sum[r]);
    }
    plain_store<D>((T *)a.out + ((size_t)row * a.heads + head) * a.head_size, a.heads * a.head_size, strip.rows,
                   a.head_size, out, scale);
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

template <int D> __host__ __device__ constexpr size_t plain_backward_bytes() {
    return (4 * plain_tile(D) + 2 * PLAIN_WEIGHTS + 2 * PLAIN) * sizeof(float);
}

/* Computes dQ of a strip of queries. Grid (strips, heads). Shared memory: Q, dO, K, V, dS. */
template <typename T, int D, bool EXTRAS>
__global__ static void __launch_bounds__(PLAIN_THREADS)
    attention_queries_plain_kernel(const Attention a, const float *__restrict__ delta) {
    SHARED_DYNAMIC(float, shared);
    float *tile_q = shared, *tile_dout = tile_q + plain_tile(D), *tile_k = tile_dout + plain_tile(D),
          *tile_v = tile_k + plain_tile(D), *weights = tile_v + plain_tile(D);
    Strip strip;
    if (!strip_find(&strip, a, (int)blockIdx.x, PLAIN)) return;
    const int head = (int)blockIdx.y, kv = head / (a.heads / a.kv_heads);
    const int row = strip.segment.start + strip.first, y = threadIdx.x / 16, x = threadIdx.x % 16;
    const T *k = (const T *)a.k + (size_t)kv * a.head_size, *v = (const T *)a.v + (size_t)kv * a.head_size;
    const RowMap map = map_keys(strip.segment);
    const int keys = keys_seen(strip.segment, strip.first + strip.rows - 1);
    const int from = keys_from<EXTRAS>(a, keys_seen(strip.segment, strip.first)) / PLAIN * PLAIN;
    const int seen = keys_seen(strip.segment, strip.first + 4 * y);
    plain_load<D>(tile_q, (const T *)a.q + (size_t)head * a.head_size, a.q_stride, map_rows(row), 0, strip.rows,
                  a.head_size);
    plain_load<D>(tile_dout, (const T *)a.dout + (size_t)head * a.head_size, a.heads * a.head_size, map_rows(row), 0,
                  strip.rows, a.head_size);
    float dq[4][D / 16], lse[4], change[4];
    const float scale[4] = {a.scale, a.scale, a.scale, a.scale};
    plain_zero(dq);
    for (int r = 0; r < 4; r++) {
        const bool valid = 4 * y + r < strip.rows;
        const size_t at = valid ? (size_t)(row + 4 * y + r) * a.heads + head : 0;
        lse[r] = valid ? ((const float *)a.lse)[at] : INFINITY;
        change[r] = valid ? delta[at] : 0;
    }
    for (int key = from; key < keys; key += PLAIN) {
        float s[4][2], ds[4][2];
        plain_load<D>(tile_k, k, a.kv_stride, map, key, keys - key, a.head_size);
        plain_load<D>(tile_v, v, a.kv_stride, map, key, keys - key, a.head_size);
        __syncthreads();
        plain_scores<D>(s, tile_q, tile_k);
        plain_scores<D>(ds, tile_dout, tile_v);
#pragma unroll
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 2; c++) {
                const int at = key + x + 16 * c;
                const bool visible = at < seen + r && at >= keys_from<EXTRAS>(a, seen + r);
                float slope;
                const float score = plain_score<EXTRAS>(a, s[r][c], slope), p = visible ? expf(score - lse[r]) : 0;
                ds[r][c] = p * (ds[r][c] - change[r]);
                if (EXTRAS) ds[r][c] *= slope;
            }
        plain_weights(weights, ds);
        __syncthreads();
        plain_add<D>(dq, weights, tile_k);
        __syncthreads();
    }
    plain_store<D>((T *)a.dq + (size_t)row * a.q_stride + (size_t)head * a.head_size, a.q_stride, strip.rows,
                   a.head_size, dq, scale);
}

/* Computes dK and dV of a strip of keys. Grid (strips, key heads). Shared memory: K, V, Q, dO, P, dS, lse, delta. */
template <typename T, int D, bool EXTRAS>
__global__ static void __launch_bounds__(PLAIN_THREADS)
    attention_keys_plain_kernel(const Attention a, const float *__restrict__ delta) {
    SHARED_DYNAMIC(float, shared);
    float *tile_k = shared, *tile_v = tile_k + plain_tile(D), *tile_q = tile_v + plain_tile(D),
          *tile_dout = tile_q + plain_tile(D), *weights = tile_dout + plain_tile(D),
          *weights_ds = weights + PLAIN_WEIGHTS, *lse = weights_ds + PLAIN_WEIGHTS, *change = lse + PLAIN;
    Strip strip;
    if (!strip_find(&strip, a, (int)blockIdx.x, PLAIN)) return;
    const int kv = (int)blockIdx.y, tid = (int)threadIdx.x, y = tid / 16, x = tid % 16;
    const int row = strip.segment.start + strip.first;
    plain_load<D>(tile_k, (const T *)a.k + (size_t)kv * a.head_size, a.kv_stride, map_rows(row), 0, strip.rows,
                  a.head_size);
    plain_load<D>(tile_v, (const T *)a.v + (size_t)kv * a.head_size, a.kv_stride, map_rows(row), 0, strip.rows,
                  a.head_size);
    float dk[4][D / 16], dv[4][D / 16];
    const float scale[4] = {a.scale, a.scale, a.scale, a.scale}, one[4] = {1, 1, 1, 1};
    plain_zero(dk);
    plain_zero(dv);
    SeenBy<EXTRAS> w = seen_by<EXTRAS>(a, strip);
    do {
        float s[4][2], ds[4][2];
        const int head = kv * w.shared + w.head, rows = w.at.len - w.i;
        const RowMap map = map_rows(w.at.start);
        __syncthreads(); /* all threads are done with the previous tiles */
        plain_load<D>(tile_q, (const T *)a.q + (size_t)head * a.head_size, a.q_stride, map, w.i, rows, a.head_size);
        plain_load<D>(tile_dout, (const T *)a.dout + (size_t)head * a.head_size, a.heads * a.head_size, map, w.i, rows,
                      a.head_size);
        if (tid < PLAIN) {
            const size_t at = tid < rows ? (size_t)(w.at.start + w.i + tid) * a.heads + head : 0;
            lse[tid] = tid < rows ? ((const float *)a.lse)[at] : INFINITY;
            change[tid] = tid < rows ? delta[at] : 0;
        }
        __syncthreads();
        plain_scores<D>(s, tile_k, tile_q);
        plain_scores<D>(ds, tile_v, tile_dout);
#pragma unroll
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 2; c++) {
                const int q = x + 16 * c;
                float slope;
                const float score = plain_score<EXTRAS>(a, s[r][c], slope);
                s[r][c] = seen_from(w, 4 * y + r, w.i + q) ? expf(score - lse[q]) : 0;
                ds[r][c] = s[r][c] * (ds[r][c] - change[q]);
                if (EXTRAS) ds[r][c] *= slope;
            }
        plain_weights(weights, s);
        plain_weights(weights_ds, ds);
        __syncthreads();
        plain_add<D>(dv, weights, tile_dout);
        plain_add<D>(dk, weights_ds, tile_q);
    } while (w.step(PLAIN));
    const size_t at = (size_t)row * a.kv_stride + (size_t)kv * a.head_size;
    plain_store<D>((T *)a.dk + at, a.kv_stride, strip.rows, a.head_size, dk, scale);
    plain_store<D>((T *)a.dv + at, a.kv_stride, strip.rows, a.head_size, dv, one);
}

#endif
