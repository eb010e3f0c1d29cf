/* attention_decode.cuh - attention of few queries over many keys (decode), and the store into the key/value cache.
 *
 * One query reads each key and value once: decode is memory-bound, and one row has too little work for one block. So a
 * row's keys are split (Flash-Decoding: Dao et al. 2023). A block takes one row, one part of its keys, and the query
 * heads that share one key head (up to HEADS of them, so that shared keys are read once). If there is more than one
 * part, each part stores its maximum, denominator and weighted sum, and a second kernel combines the parts in order.
 *
 * The split depends only on the number of keys that the row sees, so the bits of a sample do not depend on the rest of the
 * batch. Within a block, LANES lanes share a key, each with CH channels, 16 bytes at a time. Each such group of lanes
 * runs its own online softmax over every n-th key, four keys at once, and the groups are merged at the end.
 */
#ifndef LLMC_CUDA_ATTENTION_DECODE_CUH
#define LLMC_CUDA_ATTENTION_DECODE_CUH

#include "../model/backend.h" /* Acts, Attention, Ints */
#include "../model/batch.h"   /* Segment */
#include "common.cuh"         /* CUDA_LAUNCHED, Device, cuda_wide, from_float, ... */
#include "ptx.cuh"            /* LAUNCH, wide_load, wide_store */
#include "segments.cuh"       /* keys_from, keys_seen, RowMap, map_keys */

enum {
    DECODE_WARPS = 4,
    DECODE_THREADS = 32 * DECODE_WARPS,
    DECODE_SPLITS = 16, /* maximum number of parts */
    DECODE_KEYS = 128,  /* maximum keys per part, until there are DECODE_SPLITS parts */
    DECODE_AT_ONCE = 4, /* keys that a group of lanes has in flight */
};

/* The number of keys per part. */
__device__ static inline int decode_part(int keys) {
    const int parts = min((keys + DECODE_KEYS - 1) / DECODE_KEYS, (int)DECODE_SPLITS);
    return ((keys + parts - 1) / parts + 31) / 32 * 32;
}

/* Finds the segment that contains a row, and the row's index in it. All lanes of a warp must call it. False: there is
 * none. */
__device__ static inline bool row_find(Segment *found, int *i, const Attention &a, int row) {
    const Segment *segment = (const Segment *)a.segment;
    for (int base = 0; base < a.segments; base += 32) {
        const int s = base + (int)(threadIdx.x % 32);
        const bool here = s < a.segments && row >= segment[s].start && row < segment[s].start + segment[s].len;
        const unsigned lanes = __ballot_sync(0xffffffffu, here);
        if (!lanes) continue;
        *found = segment[base + __ffs((int)lanes) - 1];
        *i = row - found->start;
        return true;
    }
    return false;
}

/* Loads CH channels of a row from c on. Channels beyond the head size are 0. */
template <int CH, typename T>
__device__ static inline void channels_load(float (&x)[CH], const T *row, int c, int head_size, bool wide) {
    constexpr int W = 16 / (int)sizeof(T);
#pragma unroll
    for (int part = 0; part < CH; part += W) {
        if (wide && c + part < head_size) {
            const Wide<T> word = wide_load(row + c + part);
#pragma unroll
            for (int k = 0; k < W; k++) x[part + k] = to_float(word.v[k]);
        } else {
#pragma unroll
            for (int k = 0; k < W; k++) x[part + k] = c + part + k < head_size ? to_float(row[c + part + k]) : 0;
        }
    }
}

/* One head's partial result in a group of lanes: the sums of e^(s - most) and of e^(s - most) v. */
template <int CH> struct Share { float most, sum, out[CH]; };

/* e^(x - most), or 0 if most is -inf, that is, if no key has been seen yet */
__device__ static inline float share_weight(float x, float most) { return most == -INFINITY ? 0 : expf(x - most); }

template <typename T, int D, int HEADS, bool EXTRAS>
__global__ static void __launch_bounds__(DECODE_THREADS)
    attention_decode_kernel(const Attention a, float *__restrict__ partial, bool wide) {
    constexpr int W = 16 / (int)sizeof(T), LANES = D / W < 32 ? D / W : 32, CH = D / LANES, GROUPS = 32 / LANES;
    constexpr int STEP = DECODE_WARPS * GROUPS; /* keys in flight in the block, divided by DECODE_AT_ONCE */
    __shared__ float shared_most[DECODE_WARPS][HEADS], shared_sum[DECODE_WARPS][HEADS];
    __shared__ float shared_out[DECODE_WARPS][HEADS][D];
    Segment s;
    int i;
    if (!row_find(&s, &i, a, (int)blockIdx.x)) return;
    const int seen = keys_seen(s, i), from = keys_from<EXTRAS>(a, seen), keys = seen - from;
    const int size = decode_part(keys), first = from + (int)blockIdx.z * size, end = min(seen, first + size);
    if (first >= seen) return;
    const int shared = a.heads / a.kv_heads, parts = (shared + HEADS - 1) / HEADS;
    const int kv = (int)blockIdx.y / parts, h0 = (int)blockIdx.y % parts * HEADS; /* first of the heads that share kv */
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % LANES * CH;
    const size_t row = blockIdx.x;
    const RowMap map = map_keys(s);
    const T *k = (const T *)a.k + (size_t)kv * a.head_size, *v = (const T *)a.v + (size_t)kv * a.head_size;
    float q[HEADS][CH];
    Share<CH> share[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        const int head = kv * shared + min(h0 + h, shared - 1);
        channels_load(q[h], (const T *)a.q + row * a.q_stride + (size_t)head * a.head_size, c, a.head_size, wide);
        share[h].most = -INFINITY;
        share[h].sum = 0;
#pragma unroll
        for (int e = 0; e < CH; e++) {
            share[h].out[e] = 0;
            q[h][e] *= a.scale;
        }
    }
    for (int base = first + warp * GROUPS; base < end; base += DECODE_AT_ONCE * STEP) {
        float score[HEADS][DECODE_AT_ONCE], x[DECODE_AT_ONCE][CH];
        size_t at[DECODE_AT_ONCE];
        const int key = base + lane / LANES;
#pragma unroll
        for (int u = 0; u < DECODE_AT_ONCE; u++) {
            at[u] = (size_t)map.row(min(key + u * STEP, end - 1)) * (size_t)a.kv_stride;
            channels_load(x[u], k + at[u], c, a.head_size, wide);
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int u = 0; u < DECODE_AT_ONCE; u++) {
                float dot = 0;
#pragma unroll
                for (int e = 0; e < CH; e++) dot = fmaf(q[h][e], x[u][e], dot);
#pragma unroll
                for (int offset = LANES / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
                if (EXTRAS && a.cap > 0) dot = a.cap * tanhf(dot * (1 / a.cap));
                score[h][u] = key + u * STEP < end ? dot : -INFINITY;
            }
#pragma unroll
        for (int u = 0; u < DECODE_AT_ONCE; u++) channels_load(x[u], v + at[u], c, a.head_size, wide);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float most = share[h].most;
#pragma unroll
            for (int u = 0; u < DECODE_AT_ONCE; u++) most = fmaxf(most, score[h][u]);
            const float alpha = share_weight(share[h].most, most);
            share[h].most = most;
            share[h].sum *= alpha;
#pragma unroll
            for (int e = 0; e < CH; e++) share[h].out[e] *= alpha;
#pragma unroll
            for (int u = 0; u < DECODE_AT_ONCE; u++) {
                const float p = share_weight(score[h][u], most);
                share[h].sum += p;
#pragma unroll
                for (int e = 0; e < CH; e++) share[h].out[e] = fmaf(p, x[u][e], share[h].out[e]);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int offset = LANES; offset < 32; offset *= 2) { /* merges the warp's groups, two by two */
            const float other = __shfl_xor_sync(0xffffffffu, share[h].most, offset);
            const float most = fmaxf(share[h].most, other), mine = share_weight(share[h].most, most);
            share[h].most = most;
            share[h].sum *= mine;
            share[h].sum += __shfl_xor_sync(0xffffffffu, share[h].sum, offset);
#pragma unroll
            for (int e = 0; e < CH; e++) {
                share[h].out[e] *= mine;
                share[h].out[e] += __shfl_xor_sync(0xffffffffu, share[h].out[e], offset);
            }
        }
        if (lane == 0) {
            shared_most[warp][h] = share[h].most;
            shared_sum[warp][h] = share[h].sum;
        }
        if (lane < LANES)
#pragma unroll
            for (int e = 0; e < CH; e++) shared_out[warp][h][c + e] = share[h].out[e];
    }
    __syncthreads();
    const bool whole = keys <= size;
    for (int h = 0; h < HEADS && h0 + h < shared; h++) {
        float most = -INFINITY, sum = 0, weight[DECODE_WARPS];
        for (int w = 0; w < DECODE_WARPS; w++) most = fmaxf(most, shared_most[w][h]);
        for (int w = 0; w < DECODE_WARPS; w++) {
            weight[w] = share_weight(shared_most[w][h], most);
            sum += weight[w] * shared_sum[w][h];
        }
        const size_t at = row * a.heads + (size_t)(kv * shared + h0 + h);
        float *part = partial + (at * DECODE_SPLITS + blockIdx.z) * (size_t)(a.head_size + 2);
        for (int e = (int)threadIdx.x; e < a.head_size; e += DECODE_THREADS) {
            float out = 0;
            for (int w = 0; w < DECODE_WARPS; w++) out += weight[w] * shared_out[w][h][e];
            if (whole) ((T *)a.out)[at * a.head_size + e] = from_float<T>(out / sum);
            else part[2 + e] = out;
        }
        if (threadIdx.x == 0) {
            if (!whole) {
                part[0] = most;
                part[1] = sum;
            } else if (a.lse) ((float *)a.lse)[at] = most + logf(sum);
        }
    }
}

/* out = sum over parts of e^(most_i - most) out_i / sum over parts of e^(most_i - most) sum_i. Grid (rows, heads). */
template <typename T>
__global__ static void attention_combine_kernel(const Attention a, const float *__restrict__ partial) {
    Segment s;
    int i;
    if (!row_find(&s, &i, a, (int)blockIdx.x)) return;
    const int seen = keys_seen(s, i), keys = seen - keys_from<true>(a, seen), size = decode_part(keys);
    const int parts = (keys + size - 1) / size;
    if (parts <= 1) return;
    const size_t at = (size_t)blockIdx.x * a.heads + blockIdx.y, stride = (size_t)a.head_size + 2;
    const float *part = partial + at * DECODE_SPLITS * stride;
    float most = -INFINITY, sum = 0;
    for (int p = 0; p < parts; p++) most = fmaxf(most, part[p * stride]);
    for (int p = 0; p < parts; p++) sum += expf(part[p * stride] - most) * part[p * stride + 1];
    for (int e = (int)threadIdx.x; e < a.head_size; e += (int)blockDim.x) {
        float out = 0;
        for (int p = 0; p < parts; p++) out += expf(part[p * stride] - most) * part[p * stride + 2 + (size_t)e];
        ((T *)a.out)[at * a.head_size + e] = from_float<T>(out / sum);
    }
    if (a.lse && threadIdx.x == 0) ((float *)a.lse)[at] = most + logf(sum);
}

template <typename T, int D, bool EXTRAS> static inline void decode_launch(Device *d, const Attention *a) {
    const int shared = a->heads / a->kv_heads, parts = shared == 1 ? 1 : (int)cuda_ceil((size_t)shared, 4);
    const bool wide = cuda_wide<T>((size_t)a->head_size, a->q, a->k, a->v) &&
                      a->q_stride % (16 / (int)sizeof(T)) == 0 && a->kv_stride % (16 / (int)sizeof(T)) == 0;
    const size_t count = (size_t)a->rows * a->heads * DECODE_SPLITS * (size_t)(a->head_size + 2);
    float *partial = cuda_scratch_of<float>(d, count, "attention of few queries");
    if (!partial) return;
    const dim3 grid((unsigned)a->rows, (unsigned)(a->kv_heads * parts), DECODE_SPLITS);
    if (shared == 1)
        LAUNCH((attention_decode_kernel<T, D, 1, EXTRAS>), grid, DECODE_THREADS, 0, d->stream, *a, partial, wide);
    else LAUNCH((attention_decode_kernel<T, D, 4, EXTRAS>), grid, DECODE_THREADS, 0, d->stream, *a, partial, wide);
    CUDA_LAUNCHED(d, "attention_decode_kernel", "N %d, S %d, H %d/%d, D %d", a->rows, a->segments, a->heads,
                  a->kv_heads, a->head_size);
    LAUNCH((attention_combine_kernel<T>), dim3((unsigned)a->rows, (unsigned)a->heads), 64, 0, d->stream, *a, partial);
    CUDA_LAUNCHED(d, "attention_combine_kernel", "N %d, H %d, D %d", a->rows, a->heads, a->head_size);
}

/* ---- cache ----------------------------------------------------------------------------------------------------- */

/* Moves words of W elements; a row of the cache has `words` of them. */
template <typename T, int W>
__global__ static void kv_store_kernel(T *__restrict__ cache_k, T *__restrict__ cache_v, const T *__restrict__ k,
                                       const T *__restrict__ v, size_t stride, const int32_t *__restrict__ slot, int N,
                                       int words) {
    for (size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x; at < (size_t)N * words;
         at += (size_t)gridDim.x * blockDim.x) {
        const size_t row = at / words, c = at % words * W;
        const int to = slot[row];
        if (to < 0) continue;
        const size_t from = row * stride + c, target = (size_t)to * words * W + c;
        if constexpr (W == 1) {
            cache_k[target] = k[from];
            cache_v[target] = v[from];
        } else {
            wide_store(cache_k + target, wide_load(k + from));
            wide_store(cache_v + target, wide_load(v + from));
        }
    }
}

/* cache_k[slot[i]] = k[i], cache_v[slot[i]] = v[i] over KC channels. Rows whose slot is -1 are not stored. All other
 * slots must be distinct. */
template <typename T>
static inline void cuda_kv_store(Device *d, Acts *cache_k, Acts *cache_v, const Acts *k, const Acts *v, int stride,
                                 const Ints *slot, int N, int KC) {
    constexpr int W = 16 / (int)sizeof(T);
    if (N == 0 || KC == 0) return;
    const bool wide = cuda_wide<T>((size_t)KC, cache_k, cache_v, k, v) && stride % W == 0;
    const int words = wide ? KC / W : KC;
    const unsigned blocks = cuda_blocks(d, (size_t)N * words, 256);
    if (wide)
        LAUNCH((kv_store_kernel<T, W>), blocks, 256, 0, d->stream, (T *)cache_k, (T *)cache_v, (const T *)k,
               (const T *)v, (size_t)stride, (const int32_t *)slot, N, words);
    else
        LAUNCH((kv_store_kernel<T, 1>), blocks, 256, 0, d->stream, (T *)cache_k, (T *)cache_v, (const T *)k,
               (const T *)v, (size_t)stride, (const int32_t *)slot, N, words);
    CUDA_LAUNCHED(d, "kv_store_kernel", "N %d, KC %d, stride %d", N, KC, stride);
}

#endif
