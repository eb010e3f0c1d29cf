/* attention_mma.cuh - attention on tensor cores, forward and backward, for bf16 (FlashAttention-2: Dao 2023).
 *
 * A block is 4 warps and processes a strip of 64 rows; each warp owns 16 of them. Tiles of the other operand stream
 * through shared memory by cp.async, so that copying one tile overlaps with computing on another. Scores never leave
 * the registers: the result C of one mma.m16n8k16, packed to bf16, is operand A of the next (see ptx.cuh for the
 * layout).
 *
 *   forward    strip of queries   S = Q K^T, P = softmax(S) online (Milakov and Gimelshein 2018), O = P V
 *   queries    strip of queries   P = e^(S - lse), dP = dO V^T, dS = P (dP - delta), dQ = scale dS K
 *   keys       strip of keys      the transposes: S^T = K Q^T, dV = P^T dO, dK = scale dS^T Q
 *
 * The backward pass computes the scores twice, in `queries` and in `keys`, instead of adding to one gradient from many
 * blocks. Every gradient is summed by one warp in one order: segment by segment, row by row, head by head. So repeated
 * runs give the same bits, even if many segments share a prefix.
 *
 * In shared memory a row has D + 8 elements, 16 bytes more than a power of two, so that the 8 rows that ldmatrix reads
 * at once are in different banks. D is the head size rounded up to a size for which a kernel exists; channels beyond
 * the head size are zero. Strides and the head size must be multiples of 8 elements, and pointers must be 16-byte
 * aligned.
 */
#ifndef LLMC_CUDA_ATTENTION_MMA_CUH
#define LLMC_CUDA_ATTENTION_MMA_CUH

#include "../model/backend.h" /* Attention */
#include "common.cuh"         /* bf16 */
#include "ptx.cuh"            /* cp_async_commit, cp_async_wait, fast_exp2, mma_m16n8k16_bf16, ... */
#include "segments.cuh"       /* keys_seen, map_rows, keys_from, RowMap, ... */

enum { MMA_ROWS = 64, MMA_WARPS = 4, MMA_THREADS = 32 * MMA_WARPS };

static const float LOG2E = 1.4426950408889634f;

/* Rows of the streamed operand per tile, chosen to keep the kernels within 255 registers. */
__host__ __device__ constexpr int mma_tile(int D) { return D <= 64 ? 64 : 32; }

__host__ __device__ constexpr size_t mma_tile_bytes(int rows, int D) {
    return (size_t)rows * (size_t)(D + 8) * sizeof(bf16);
}

/* ---- tiles and fragments --------------------------------------------------------------------------------------- */

/* Starts copying ROWS rows of x, from row `first` of the map on, into a tile. Missing rows and channels become
 * zeros. */
template <int ROWS, int D>
__device__ static inline void tile_ask(bf16 *tile, const bf16 *x, int stride, RowMap map, int first, int rows,
                                       int head_size) {
    constexpr int WORDS = D / 8; /* 16-byte words per row */
#pragma unroll
    for (int i = (int)threadIdx.x; i < ROWS * WORDS; i += MMA_THREADS) {
        const int row = i / WORDS, c = i % WORDS * 8;
        const bool valid = row < rows && c < head_size;
        const size_t from = valid ? (size_t)map.row(first + row) * (size_t)stride + (size_t)c : 0;
        cp_async_16_zfill(tile + row * (D + 8) + c, x + from, valid);
    }
}

/* Loads operand A: 16 rows x 16 columns of a tile. */
template <int D> __device__ static inline void fragment_a(uint32_t (&a)[4], const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile + (row + lane % 16) * (D + 8) + column + lane / 16 * 8);
}

/* Loads tile^T as operand B, 16 deep and 16 wide, in two operands of 8 columns: tile rows `row` .. +15 are B's
 * columns. */
template <int D>
__device__ static inline void fragment_rows(uint32_t (&left)[2], uint32_t (&right)[2], const bf16 *tile, int row,
                                            int depth) {
    const int lane = threadIdx.x % 32;
    uint32_t b[4];
    ldmatrix_x4(b, tile + (row + lane % 8 + lane / 16 * 8) * (D + 8) + depth + lane / 8 % 2 * 8);
    left[0] = b[0];
    left[1] = b[1];
    right[0] = b[2];
    right[1] = b[3];
}

/* Loads the tile itself as operand B: tile rows are the depth, and tile columns `column` .. +15 are B's columns. */
template <int D>
__device__ static inline void fragment_columns(uint32_t (&left)[2], uint32_t (&right)[2], const bf16 *tile, int depth,
                                               int column) {
    const int lane = threadIdx.x % 32;
    uint32_t b[4];
    ldmatrix_x4_trans(b, tile + (depth + lane % 16) * (D + 8) + column + lane / 16 * 8);
    left[0] = b[0];
    left[1] = b[1];
    right[0] = b[2];
    right[1] = b[3];
}

/* The factor of the scores, which are products of queries and keys, or with a cap what scores_bend() makes of them. */
template <bool EXTRAS> __device__ static inline float scores_unit(const Attention &a) {
    return EXTRAS && a.cap > 0 ? a.cap : a.scale;
}

/* s = tanh(scale s / cap): cap times that is the score. */
template <int N> __device__ static inline void scores_bend(float (&s)[N][4], const Attention &a) {
    const float inside = a.scale / a.cap;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int k = 0; k < 4; k++) s[n][k] = fast_tanh(s[n][k] * inside);
}

/* Zeros M x N results of 16 x 8: 16 M rows of a warp, 8 N columns. */
template <int M, int N> __device__ static inline void fragments_zero(float (&x)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++) x[m][n][0] = x[m][n][1] = x[m][n][2] = x[m][n][3] = 0;
}

/* s = own tile^T: 16 M rows of `own`, from `row` on, against all rows of a tile, over D channels. */
template <int D, int M, int N>
__device__ static inline void scores(float (&s)[M][N][4], const bf16 *own, int row, const bf16 *tile) {
    fragments_zero(s);
#pragma unroll
    for (int depth = 0; depth < D; depth += 16) {
        uint32_t a[M][4], left[2], right[2];
#pragma unroll
        for (int m = 0; m < M; m++) fragment_a<D>(a[m], own, row + 16 * m, depth);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            fragment_rows<D>(left, right, tile, 8 * n, depth);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16_bf16(s[m][n], a[m], left, s[m][n]);
                mma_m16n8k16_bf16(s[m][n + 1], a[m], right, s[m][n + 1]);
            }
        }
    }
}

/* out += bf16(p) tile */
template <int D, int M, int N>
__device__ static inline void weighted_add(float (&out)[M][D / 8][4], const float (&p)[M][N][4], const bf16 *tile) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        uint32_t a[M][4], left[2], right[2];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                a[m][k] = pack_bf16(p[m][n + k / 2][2 * (k % 2)], p[m][n + k / 2][2 * (k % 2) + 1]);
#pragma unroll
        for (int c = 0; c < D / 8; c += 2) {
            fragment_columns<D>(left, right, tile, 8 * n, 8 * c);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16_bf16(out[m][c], a[m], left, out[m][c]);
                mma_m16n8k16_bf16(out[m][c + 1], a[m], right, out[m][c + 1]);
            }
        }
    }
}

/* Writes 16 rows of a warp to x, scaled by scale0 (rows g) and scale1 (rows g + 8), in whole 16-byte words through the
 * warp's own part of shared memory. rows: how many of the 16 rows exist. */
template <int D>
__device__ static inline void rows_store(bf16 *x, int stride, int rows, int head_size, const float (&out)[D / 8][4],
                                         float scale0, float scale1, bf16 *staging) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp(0xffffffffu);
#pragma unroll
    for (int c = 0; c < D / 8; c++) {
        *(uint32_t *)(staging + g * (D + 8) + 8 * c + 2 * t) = pack_bf16(out[c][0] * scale0, out[c][1] * scale0);
        *(uint32_t *)(staging + (g + 8) * (D + 8) + 8 * c + 2 * t) = pack_bf16(out[c][2] * scale1, out[c][3] * scale1);
    }
    __syncwarp(0xffffffffu);
    for (int i = lane; i < 16 * (D / 8); i += 32) {
        const int row = i / (D / 8), c = i % (D / 8) * 8;
        if (row < rows && c < head_size)
            wide_store(x + (size_t)row * (size_t)stride + c, wide_load(staging + row * (D + 8) + c));
    }
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

/* The running softmax of rows g and g + 8 of a warp: the maximum score so far and the sum of 2^(scale2 (s - most)). */
struct Softmax {
    float most[2], sum[2];
};

/* Turns scores into weights relative to the new maximum. alpha receives the factors that rescale the earlier sums. */
template <int N>
__device__ static inline void softmax_tile(Softmax &w, float (&alpha)[2], float (&s)[N][4], float scale2) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = w.most[half], sum = 0;
#pragma unroll
        for (int n = 0; n < N; n++) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float base = most == -INFINITY ? 0 : most; /* rows beyond the last may have seen no key */
        const float shift = base * scale2;
        alpha[half] = fast_exp2((w.most[half] - base) * scale2); /* first tile: 2^-inf = 0; maximum unchanged: 1 */
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int k = 2 * half; k < 2 * half + 2; k++) sum += s[n][k] = fast_exp2(fmaf(s[n][k], scale2, -shift));
        w.most[half] = most;
        w.sum[half] = w.sum[half] * alpha[half] + sum; /* over this thread's columns */
    }
}

/* Masks keys that a query does not see: row g sees `seen` keys and row g + 8 sees seen + 8; of them only the last
 * `window`, unless that is 0. */
template <bool EXTRAS, int N>
__device__ static inline void scores_mask(float (&s)[N][4], int key, int seen, int window) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int at = key + 8 * n + 2 * t + k % 2, end = seen + k / 2 * 8;
            if (at >= end || (EXTRAS && window > 0 && at < end - window)) s[n][k] = -INFINITY;
        }
}

/* Keys per tile of the forward pass. */
__host__ __device__ constexpr int mma_keys(int D) { return D <= 64 ? 64 : 32; }

template <int D, int M> __host__ __device__ constexpr size_t mma_forward_bytes() {
    return mma_tile_bytes(MMA_ROWS * M, D) + 2 * mma_tile_bytes(mma_keys(D), D);
}

/* Processes a strip of 64 M queries; a warp has 16 M of them and reads each tile once for all. Grid (strips, heads).
 * Shared memory: Q, K, V. */
template <int D, int M, bool EXTRAS>
__global__ static void __launch_bounds__(MMA_THREADS) attention_forward_mma_kernel(const Attention a) {
    constexpr int ROWS = MMA_ROWS * M, KEYS = mma_keys(D);
    SHARED_DYNAMIC(bf16, shared);
    bf16 *tile_q = shared, *tile_k = tile_q + ROWS * (D + 8), *tile_v = tile_k + KEYS * (D + 8);
    Strip strip;
    if (!strip_find(&strip, a, (int)blockIdx.x, ROWS)) return;
    const int head = (int)blockIdx.y, kv = head / (a.heads / a.kv_heads);
    const int own = (int)(threadIdx.x / 32) * 16 * M, own_rows = min(strip.rows - own, 16 * M); /* the warp's rows */
    const int row = strip.segment.start + strip.first, g = threadIdx.x % 32 / 4;
    const bf16 *k = (const bf16 *)a.k + (size_t)kv * a.head_size, *v = (const bf16 *)a.v + (size_t)kv * a.head_size;
    const RowMap map = map_keys(strip.segment);
    const int keys = keys_seen(strip.segment, strip.first + strip.rows - 1);
    const int from = keys_from<EXTRAS>(a, keys_seen(strip.segment, strip.first)) / KEYS * KEYS;
    const int seen_first = keys_seen(strip.segment, strip.first + own); /* keys seen by the warp's first row */
    const int seen_last = own_rows > 0 ? seen_first + own_rows - 1 : 0;
    const float unit = scores_unit<EXTRAS>(a), scale2 = unit * LOG2E;
    tile_ask<ROWS, D>(tile_q, (const bf16 *)a.q + (size_t)head * a.head_size, a.q_stride, map_rows(row), 0, strip.rows,
                      a.head_size);
    tile_ask<KEYS, D>(tile_k, k, a.kv_stride, map, from, keys - from, a.head_size);
    cp_async_commit();
    float out[M][D / 8][4];
    fragments_zero(out);
    Softmax w[M];
#pragma unroll
    for (int m = 0; m < M; m++) w[m] = Softmax{{-INFINITY, -INFINITY}, {0, 0}};
    for (int key = from; key < keys; key += KEYS) {
        float s[M][KEYS / 8][4];
        /* does the warp see any key of the tile? */
        const bool any = key < seen_last && (!EXTRAS || key + KEYS > keys_from<EXTRAS>(a, seen_first));
        cp_async_wait<0>();
        __syncthreads(); /* K has arrived; all warps are done with V */
        tile_ask<KEYS, D>(tile_v, v, a.kv_stride, map, key, keys - key, a.head_size);
        cp_async_commit();
        if (any) {
            scores<D>(s, tile_q, own, tile_k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                const int seen = seen_first + 16 * m; /* keys seen by the first of the 16 rows */
                float alpha[2];
                if (EXTRAS && a.cap > 0) scores_bend(s[m], a);
                if (key + KEYS > seen || (EXTRAS && key < keys_from<EXTRAS>(a, seen + 15)))
                    scores_mask<EXTRAS>(s[m], key, seen + g, a.window);
                softmax_tile(w[m], alpha, s[m], scale2);
#pragma unroll
                for (int c = 0; c < D / 8; c++)
#pragma unroll
                    for (int e = 0; e < 4; e++) out[m][c][e] *= alpha[e / 2];
            }
        }
        cp_async_wait<0>();
        __syncthreads(); /* V has arrived; all warps are done with K */
        if (key + KEYS < keys)
            tile_ask<KEYS, D>(tile_k, k, a.kv_stride, map, key + KEYS, keys - key - KEYS, a.head_size);
        cp_async_commit();
        if (any) weighted_add<D>(out, s, tile_v);
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = 16 * m + g + 8 * half;
            w[m].sum[half] += __shfl_xor_sync(0xffffffffu, w[m].sum[half], 1);
            w[m].sum[half] += __shfl_xor_sync(0xffffffffu, w[m].sum[half], 2);
            if (a.lse && threadIdx.x % 4 == 0 && i < own_rows)
                ((float *)a.lse)[(size_t)(row + own + i) * a.heads + head] =
                    w[m].most[half] * unit + logf(w[m].sum[half]);
        }
        rows_store<D>((bf16 *)a.out + ((size_t)(row + own + 16 * m) * a.heads + head) * a.head_size,
                      a.heads * a.head_size, own_rows - 16 * m, a.head_size, out[m], 1 / w[m].sum[0], 1 / w[m].sum[1],
                      tile_q + (own + 16 * m) * (D + 8));
    }
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

template <int D> __host__ __device__ constexpr size_t mma_queries_bytes() {
    return 2 * mma_tile_bytes(MMA_ROWS, D) + 4 * mma_tile_bytes(mma_tile(D), D);
}

/* Computes dQ of a strip of queries. Grid (strips, heads). Shared memory: Q, dO, two buffers of K and V. */
template <int D, bool EXTRAS>
__global__ static void __launch_bounds__(MMA_THREADS)
    attention_queries_mma_kernel(const Attention a, const float *__restrict__ delta) {
    constexpr int KEYS = mma_tile(D), TILE = KEYS * (D + 8);
    SHARED_DYNAMIC(bf16, shared);
    bf16 *tile_q = shared, *tile_dout = tile_q + MMA_ROWS * (D + 8), *tile_k = tile_dout + MMA_ROWS * (D + 8),
         *tile_v = tile_k + 2 * TILE;
    Strip strip;
    if (!strip_find(&strip, a, (int)blockIdx.x, MMA_ROWS)) return;
    const int head = (int)blockIdx.y, kv = head / (a.heads / a.kv_heads), warp = threadIdx.x / 32;
    const int row = strip.segment.start + strip.first;
    const int g = threadIdx.x % 32 / 4, i = 16 * warp + g;
    const bf16 *k = (const bf16 *)a.k + (size_t)kv * a.head_size, *v = (const bf16 *)a.v + (size_t)kv * a.head_size;
    const RowMap map = map_keys(strip.segment);
    const int keys = keys_seen(strip.segment, strip.first + strip.rows - 1);
    const int from = keys_from<EXTRAS>(a, keys_seen(strip.segment, strip.first)) / KEYS * KEYS;
    const int seen_first = keys_seen(strip.segment, strip.first + 16 * warp);
    const float unit = scores_unit<EXTRAS>(a), scale2 = unit * LOG2E;
    tile_ask<MMA_ROWS, D>(tile_q, (const bf16 *)a.q + (size_t)head * a.head_size, a.q_stride, map_rows(row), 0,
                          strip.rows, a.head_size);
    tile_ask<MMA_ROWS, D>(tile_dout, (const bf16 *)a.dout + (size_t)head * a.head_size, a.heads * a.head_size,
                          map_rows(row), 0, strip.rows, a.head_size);
    tile_ask<KEYS, D>(tile_k, k, a.kv_stride, map, from, keys - from, a.head_size);
    tile_ask<KEYS, D>(tile_v, v, a.kv_stride, map, from, keys - from, a.head_size);
    cp_async_commit();
    float lse2[2], change[2]; /* lse and delta of rows i and i + 8; a missing row gets weights 2^-inf */
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const bool valid = i + 8 * half < strip.rows;
        const size_t at = valid ? (size_t)(row + i + 8 * half) * a.heads + head : 0;
        lse2[half] = valid ? ((const float *)a.lse)[at] * LOG2E : INFINITY;
        change[half] = valid ? delta[at] : 0;
    }
    float dq[1][D / 8][4];
    fragments_zero(dq);
    for (int key = from, at = 0; key < keys; key += KEYS, at = TILE - at) {
        float s[1][KEYS / 8][4], ds[1][KEYS / 8][4];
        if (key + KEYS < keys) {
            tile_ask<KEYS, D>(tile_k + TILE - at, k, a.kv_stride, map, key + KEYS, keys - key - KEYS, a.head_size);
            tile_ask<KEYS, D>(tile_v + TILE - at, v, a.kv_stride, map, key + KEYS, keys - key - KEYS, a.head_size);
        }
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads(); /* this tile has arrived */
        scores<D>(s, tile_q, 16 * warp, tile_k + at);
        scores<D>(ds, tile_dout, 16 * warp, tile_v + at);
        if (EXTRAS && a.cap > 0) { /* dP - delta times the derivative of the cap, 1 - tanh^2 */
            scores_bend(s[0], a);
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) ds[0][n][e] = (ds[0][n][e] - change[e / 2]) * (1 - s[0][n][e] * s[0][n][e]);
        }
        if (key + KEYS > seen_first || (EXTRAS && key < keys_from<EXTRAS>(a, seen_first + 15)))
            scores_mask<EXTRAS>(s[0], key, seen_first + g, a.window);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float less = EXTRAS && a.cap > 0 ? 0 : change[e / 2];
                ds[0][n][e] = fast_exp2(fmaf(s[0][n][e], scale2, -lse2[e / 2])) * (ds[0][n][e] - less);
            }
        weighted_add<D>(dq, ds, tile_k + at);
        __syncthreads(); /* all warps are done with the tile */
    }
    rows_store<D>((bf16 *)a.dq + (size_t)(row + 16 * warp) * a.q_stride + (size_t)head * a.head_size, a.q_stride,
                  strip.rows - 16 * warp, a.head_size, dq[0], a.scale, a.scale, tile_q + 16 * warp * (D + 8));
}

template <int D> __host__ __device__ constexpr size_t mma_keys_bytes() {
    return 2 * mma_tile_bytes(MMA_ROWS, D) + 4 * mma_tile_bytes(mma_tile(D), D) + 4 * mma_tile(D) * sizeof(float);
}

/* Computes dK and dV of a strip of keys. Grid (strips, key heads). Shared memory: K, V, two buffers of Q, dO, lse and
 * delta. */
template <int D, bool EXTRAS>
__global__ static void __launch_bounds__(MMA_THREADS)
    attention_keys_mma_kernel(const Attention a, const float *__restrict__ delta) {
    constexpr int ROWS = mma_tile(D), TILE = ROWS * (D + 8);
    SHARED_DYNAMIC(bf16, shared);
    bf16 *tile_k = shared, *tile_v = tile_k + MMA_ROWS * (D + 8), *tile_q = tile_v + MMA_ROWS * (D + 8),
         *tile_dout = tile_q + 2 * TILE;
    float *tile_lse2 = (float *)(tile_dout + 2 * TILE), *tile_delta = tile_lse2 + 2 * ROWS;
    Strip strip;
    if (!strip_find(&strip, a, (int)blockIdx.x, MMA_ROWS)) return;
    const int kv = (int)blockIdx.y, warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int row = strip.segment.start + strip.first, out_stride = a.heads * a.head_size;
    const float unit = scores_unit<EXTRAS>(a), scale2 = unit * LOG2E;
    tile_ask<MMA_ROWS, D>(tile_k, (const bf16 *)a.k + (size_t)kv * a.head_size, a.kv_stride, map_rows(row), 0,
                          strip.rows, a.head_size);
    tile_ask<MMA_ROWS, D>(tile_v, (const bf16 *)a.v + (size_t)kv * a.head_size, a.kv_stride, map_rows(row), 0,
                          strip.rows, a.head_size);
    SeenBy<EXTRAS> w = seen_by<EXTRAS>(a, strip), next = w;
    const auto ask = [&](const SeenBy<EXTRAS> &q, int buffer) {
        const int head = kv * q.shared + q.head, rows = q.at.len - q.i, tid = (int)threadIdx.x;
        const RowMap map = map_rows(q.at.start);
        tile_ask<ROWS, D>(tile_q + buffer * TILE, (const bf16 *)a.q + (size_t)head * a.head_size, a.q_stride, map, q.i,
                          rows, a.head_size);
        tile_ask<ROWS, D>(tile_dout + buffer * TILE, (const bf16 *)a.dout + (size_t)head * a.head_size, out_stride, map,
                          q.i, rows, a.head_size);
        if (tid < ROWS) {
            const size_t at = tid < rows ? (size_t)(q.at.start + q.i + tid) * a.heads + head : 0;
            tile_lse2[buffer * ROWS + tid] = tid < rows ? ((const float *)a.lse)[at] * LOG2E : INFINITY;
            tile_delta[buffer * ROWS + tid] = tid < rows ? delta[at] : 0;
        }
    };
    ask(next, 0);
    cp_async_commit();
    float dk[1][D / 8][4], dv[1][D / 8][4];
    fragments_zero(dk);
    fragments_zero(dv);
    int buffer = 0;
    for (bool more = true; more; buffer ^= 1) {
        float s[1][ROWS / 8][4], ds[1][ROWS / 8][4];
        more = next.step(ROWS);
        if (more) ask(next, buffer ^ 1);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads(); /* this tile has arrived */
        const float *lse2 = tile_lse2 + buffer * ROWS, *change = tile_delta + buffer * ROWS;
        scores<D>(s, tile_k, 16 * warp, tile_q + buffer * TILE);
        scores<D>(ds, tile_v, 16 * warp, tile_dout + buffer * TILE);
        /* do all queries of the tile see all 16 keys? */
        const bool all =
            seen_from(w, 16 * warp, w.i) && seen_from(w, 16 * warp + 15, w.i) && w.inside(16 * warp, w.i + ROWS - 1);
        if (EXTRAS && a.cap > 0) scores_bend(s[0], a);
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int q = 8 * n + 2 * t + e % 2, key = 16 * warp + g + e / 2 * 8;
                float p = fast_exp2(fmaf(s[0][n][e], scale2, -lse2[q]));
                if (!all && !seen_from(w, key, w.i + q)) p = 0;
                ds[0][n][e] = p * (ds[0][n][e] - change[q]);
                if (EXTRAS && a.cap > 0) ds[0][n][e] *= 1 - s[0][n][e] * s[0][n][e];
                s[0][n][e] = p;
            }
        weighted_add<D>(dv, s, tile_dout + buffer * TILE);
        weighted_add<D>(dk, ds, tile_q + buffer * TILE);
        w = next;
        __syncthreads(); /* all warps are done with the tile */
    }
    const size_t at = (size_t)(row + 16 * warp) * a.kv_stride + (size_t)kv * a.head_size;
    bf16 *staging = tile_k + 16 * warp * (D + 8);
    rows_store<D>((bf16 *)a.dk + at, a.kv_stride, strip.rows - 16 * warp, a.head_size, dk[0], a.scale, a.scale,
                  staging);
    rows_store<D>((bf16 *)a.dv + at, a.kv_stride, strip.rows - 16 * warp, a.head_size, dv[0], 1, 1, staging);
}

#endif
