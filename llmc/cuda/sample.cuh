/* sample.cuh - sampling of one token per row on the GPU: repetition penalty, temperature, top-k, top-p and min-p,
 * in the order of backend.h. The same uniform number as on the CPU is inverted over the kept tokens in the order of
 * their ids.
 *
 * Nothing is sorted and nothing is written back. A block processes one row of logits and reads it several times from
 * the cache. Each time it recomputes y = logit / temperature, penalised if the token is marked in a bit map. The tokens
 * that top-k and top-p keep are all within some distance of the maximum y. That distance is found by radix selection on
 * its bits, in steps of 11 + 10 + 10 bits: build a histogram of the weights, find the bin in which the wanted weight is
 * reached, and repeat within this bin. A token weighs 1 for top-k. For top-p it weighs e^(y - max) as an integer in
 * units of 2^-40, so that atomic additions in any order give the same sum. Tokens at the same distance are kept or
 * dropped together.
 *
 * A launch has few rows and a large vocabulary, so a block has 1024 threads and uses 16 KiB of shared memory for the
 * histogram and V / 8 bytes for the bit map.
 */
#ifndef LLMC_CUDA_SAMPLE_CUH
#define LLMC_CUDA_SAMPLE_CUH

#include "../model/backend.h" /* Draw */
#include "common.cuh"         /* CUDA_LAUNCHED, Device, block_max, cuda_ceil, ... */
#include "head.cuh"           /* LogitSums, cuda_head_chunk_rows, logits_copy_kernel, logits_read */
#include "matmul.cuh"         /* aligned_rows, cuda_matmul_nt */
#include "ptx.cuh"            /* LAUNCH, SHARED_DYNAMIC */

enum { SAMPLE_THREADS = 1024, SAMPLE_BINS = 2048, SAMPLE_TILE = 128 };

typedef unsigned long long Mass; /* in units of 2^-40 of the most likely token's weight, or a count */

/* A row of logits and how they are transformed and filtered. */
struct SampleRow {
    const float *z;
    int V;
    float inverse_temperature, penalty;
    const uint32_t *seen; /* bit map of the history; NULL: no penalty */
    float max;            /* maximum of y */
    float within;         /* a token is kept if max - y <= within ... */
    float least;          /* ... and y >= least */

    __device__ float y(int v) const {
        const float y = z[v] * inverse_temperature;
        if (!seen || !(seen[v / 32] >> v % 32 & 1)) return y;
        return y > 0 ? y / penalty : y * penalty;
    }
    __device__ bool kept(float y) const { return max - y <= within && y >= least; }
};

/* Calls f(v, y) for this thread's tokens of the row, with four reads in flight. y is NaN past the end of the row. */
template <typename F> __device__ static inline void sample_each(const SampleRow &r, F f) {
    for (int base = (int)threadIdx.x; base < r.V; base += 4 * SAMPLE_THREADS) {
        float y[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int v = base + k * SAMPLE_THREADS;
            y[k] = v < r.V ? r.y(v) : NAN;
        }
#pragma unroll
        for (int k = 0; k < 4; k++) f(base + k * SAMPLE_THREADS, y[k]);
    }
}

/* The maximum y and its first position; position 0 if all are NaN. */
__device__ static inline void sample_max(const SampleRow &r, float *max, int *argmax) {
    float most = -INFINITY;
    int at = r.V;
    sample_each(r, [&](int, float y) { most = fmaxf(most, y); });
    most = block_max<SAMPLE_THREADS>(most);
    sample_each(r, [&](int v, float y) { at = y == most ? min(at, v) : at; });
    at = (int)-block_max<SAMPLE_THREADS>((float)-at); /* exact: vocabularies are far below 2^24 */
    *max = most;
    *argmax = at < r.V ? at : 0;
}

template <bool COUNT> __device__ static inline Mass sample_weight(float distance) {
    return COUNT ? 1 : (Mass)(expf(-distance) * 0x1p40f);
}

/* The smallest distance from the maximum such that the tokens within it, among those within r.within, weigh at least
 * `want` (>= 1). Returns r.within if all of them together weigh less. bins: shared, SAMPLE_BINS. */
template <bool COUNT> __device__ static inline float sample_distance(const SampleRow &r, Mass want, Mass *bins) {
    __shared__ Mass warp_mass[SAMPLE_THREADS / 32], wanted;
    __shared__ int chosen;
    const int tid = (int)threadIdx.x, lane = tid % 32, warp = tid / 32;
    uint32_t known = 0; /* the bits found so far of the wanted distance, above `shift` */
    for (int shift = 20; shift >= 0; shift -= 10) {
        const uint32_t mask = shift == 20 ? SAMPLE_BINS - 1 : 1023;
        for (int i = tid; i < SAMPLE_BINS; i += SAMPLE_THREADS) bins[i] = 0;
        if (tid == 0) chosen = -1;
        __syncthreads();
        sample_each(r, [&](int, float y) {
            const float distance = r.max - y;
            const uint32_t bits = __float_as_uint(distance);
            if (!(distance <= r.within) || (shift < 20 && bits >> (shift + 10) != known)) return;
            const Mass weight = sample_weight<COUNT>(distance);
            if (weight) atomicAdd(&bins[bits >> shift & mask], weight);
        });
        __syncthreads();
        /* two bins per thread: the mass of all bins before them */
        const Mass one = bins[2 * tid], both = one + bins[2 * tid + 1];
        Mass end = both;
        for (int offset = 1; offset < 32; offset *= 2) {
            const Mass before = __shfl_up_sync(0xffffffffu, end, offset);
            if (lane >= offset) end += before;
        }
        if (lane == 31) warp_mass[warp] = end;
        __syncthreads();
        for (int w = 0; w < warp; w++) end += warp_mass[w];
        const Mass before = end - both;
        if (before < want && want <= end) { /* true in one thread or in none */
            const bool second = want > before + one;
            chosen = 2 * tid + second;
            wanted = want - before - (second ? one : 0);
        }
        __syncthreads();
        if (chosen < 0) return r.within;
        known = known << (shift == 20 ? 11 : 10) | (uint32_t)chosen;
        want = wanted;
        __syncthreads();
    }
    return __uint_as_float(known);
}

/* The mass of all tokens within r.within. */
__device__ static inline Mass sample_mass(const SampleRow &r) {
    Mass sum = 0;
    sample_each(r, [&](int, float y) {
        const float distance = r.max - y;
        if (distance <= r.within) sum += sample_weight<false>(distance);
    });
    return block_sum<SAMPLE_THREADS>(sum);
}

/* Inclusive prefix sum of x >= 0 over the lanes of a warp. */
__device__ static inline double sample_scan(double x) {
    for (int offset = 1; offset < 32; offset *= 2) {
        const double before = __shfl_up_sync(0xffffffffu, x, offset);
        if ((int)(threadIdx.x % 32) >= offset) x += before;
    }
    return x;
}

/* The first lane with `yes`, else the last lane with `fallback`, else 0. */
__device__ static inline int sample_lane(bool yes, bool fallback) {
    const unsigned first = __ballot_sync(0xffffffffu, yes), last = __ballot_sync(0xffffffffu, fallback);
    return first ? __ffs((int)first) - 1 : last ? 31 - __clz((int)last) : 0;
}

/* The token at which the running sum of e^(y - max) over the kept tokens, in the order of ids, exceeds u times the
 * total. If rounding leaves the running sum short, the last kept token. total: the sum over all kept tokens. Only warp
 * 0 gets the results. tiles: shared, ceil(V / SAMPLE_TILE). */
__device__ static inline int sample_invert(const SampleRow &r, float u, float *tiles, double *total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, count = (r.V + SAMPLE_TILE - 1) / SAMPLE_TILE;
    for (int tile = warp; tile < count; tile += SAMPLE_THREADS / 32) {
        float sum = 0;
        for (int k = 0; k < 4; k++) {
            const int v = tile * SAMPLE_TILE + 4 * lane + k;
            const float y = v < r.V ? r.y(v) : -INFINITY;
            if (r.kept(y)) sum += expf(y - r.max);
        }
        sum = warp_sum(sum);
        if (lane == 0) tiles[tile] = sum;
    }
    __syncthreads();
    if (warp) return 0;
    /* find the tile: each lane has `each` of them */
    const int each = (count + 31) / 32, first = lane * each, last = min(first + each, count);
    double own = 0;
    for (int tile = first; tile < last; tile++) own += (double)tiles[tile];
    const double end = sample_scan(own);
    *total = __shfl_sync(0xffffffffu, end, 31);
    const double wanted = (double)u * *total;
    int lane_found = sample_lane(end > wanted, own > 0), tile = first;
    double running = end - own;
    if (lane == lane_found) { /* the first tile that exceeds `wanted`, else the last one with a kept token */
        int found = first;
        double before = running;
        for (; tile < last; tile++) {
            if (tiles[tile] > 0) {
                found = tile;
                before = running;
            }
            running += (double)tiles[tile];
            if (running > wanted) break;
        }
        tile = found;
        running = before;
    }
    tile = __shfl_sync(0xffffffffu, tile, lane_found);
    running = __shfl_sync(0xffffffffu, running, lane_found);
    /* find the token in the tile */
    double e[4], sum = 0;
    int token = -1;
    for (int k = 0; k < 4; k++) {
        const int v = tile * SAMPLE_TILE + 4 * lane + k;
        const float y = v < r.V ? r.y(v) : -INFINITY;
        e[k] = r.kept(y) ? (double)expf(y - r.max) : 0;
        if (e[k] > 0) token = v;
        sum += e[k];
    }
    const double passed = running + sample_scan(sum);
    lane_found = sample_lane(passed > wanted && sum > 0, token >= 0);
    running = passed - sum;
    for (int k = 0; k < 4; k++) {
        running += e[k];
        if (e[k] > 0 && running > wanted) {
            token = tile * SAMPLE_TILE + 4 * lane + k;
            break;
        }
    }
    return max(__shfl_sync(0xffffffffu, token, lane_found), 0);
}

/* Bytes of shared memory per block: a histogram or the sums of the tiles, and the bit map if there is a penalty. */
static inline size_t sample_shared_bytes(int V, bool penalty) {
    const size_t bins = SAMPLE_BINS * sizeof(Mass), tiles = cuda_ceil((size_t)V, SAMPLE_TILE) * sizeof(float);
    return ((bins > tiles ? bins : tiles) + 15) / 16 * 16 + (penalty ? cuda_ceil((size_t)V, 32) * sizeof(uint32_t) : 0);
}

/* Samples rows first .. first+gridDim.x-1 of the draw, whose logits are z. map: byte offset of the bit map; 0: no bit
 * map. */
__global__ static void __launch_bounds__(SAMPLE_THREADS, 1)
    sample_kernel(const Draw a, int first, const float *__restrict__ z, int map) {
    SHARED_DYNAMIC(char, shared);
    Mass *bins = (Mass *)shared;
    uint32_t *seen = (uint32_t *)(shared + map);
    const int row = first + (int)blockIdx.x, tid = (int)threadIdx.x;
    const bool greedy = a.temperature == 0;
    SampleRow r = {z + (size_t)blockIdx.x * a.padded_vocab,
                   a.vocab,
                   greedy ? 1.0f : 1.0f / a.temperature,
                   a.repetition_penalty,
                   map ? seen : NULL,
                   0,
                   INFINITY,
                   -INFINITY};
    const LogitSums full = logits_read<SAMPLE_THREADS, false>(r.z, r.V, r.inverse_temperature, 0);
    int token = full.argmax < r.V ? full.argmax : 0;
    float kept_logp = 0;
    r.max = full.max * r.inverse_temperature;
    if (map) {
        const int32_t *history = (const int32_t *)a.history + (size_t)row * a.history_stride;
        const int count = ((const int32_t *)a.history_len)[row];
        for (int i = tid; i < (r.V + 31) / 32; i += SAMPLE_THREADS) seen[i] = 0;
        __syncthreads();
        for (int i = tid; i < count; i += SAMPLE_THREADS)
            if ((unsigned)history[i] < (unsigned)r.V) atomicOr(&seen[history[i] / 32], 1u << history[i] % 32);
        __syncthreads();
        sample_max(r, &r.max, &token);
    }
    if (!greedy) {
        if (a.top_k > 0 && a.top_k < r.V) r.within = sample_distance<true>(r, (Mass)a.top_k, bins);
        if (a.top_p < 1) {
            const double wanted = ceil((double)a.top_p * (double)sample_mass(r));
            r.within = sample_distance<false>(r, wanted < 1 ? 1 : (Mass)wanted, bins);
        }
        if (a.min_p > 0) r.least = r.max + logf(a.min_p);
        const uint32_t *stream = (const uint32_t *)a.stream + 2 * (size_t)row;
        const float u =
            cuda_uniform(a.seed, (uint64_t)stream[1] << 32 | stream[0], (uint64_t)((const int32_t *)a.index)[row]);
        double total = 1;
        token = sample_invert(r, u, (float *)bins, &total);
        if (tid == 0) kept_logp = r.y(token) - r.max - (float)log(total);
    }
    if (tid) return;
    ((int32_t *)a.token)[row] = token;
    ((float *)a.logp)[row] = (r.z[token] - full.max) * r.inverse_temperature - logf(full.sum);
    if (a.kept_logp) ((float *)a.kept_logp)[row] = kept_logp;
}

/* Samples rows first .. first+n-1 of the draw from their logits z, (n, padded_vocab). */
static inline void sample_launch(Device *d, const Draw *a, int first, int n, const float *z) {
    const bool penalty = a->history && a->repetition_penalty != 1.0f;
    const size_t map = sample_shared_bytes(a->vocab, false), bytes = sample_shared_bytes(a->vocab, penalty);
    if (bytes > d->shared_limit - 1024)
        return (void)cuda_fail(
            d, "sample: a vocabulary of %d needs %zu bytes of shared memory per block, this device has %zu", a->vocab,
            bytes, d->shared_limit);
    if (bytes > 46 * 1024 &&
        !CUDA_CHECK(d, cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                    "%zu bytes", bytes))
        return;
    LAUNCH(sample_kernel, (unsigned)n, SAMPLE_THREADS, bytes, d->stream, *a, first, z, penalty ? (int)map : 0);
    CUDA_LAUNCHED(d, "sample_kernel", "R %d, V %d, Vp %d", n, a->vocab, a->padded_vocab);
}

template <typename T> static inline void cuda_sample(Device *d, const Draw *a) {
    const int C = a->channels, Vp = a->padded_vocab;
    if (a->rows == 0) return;
    const int chunk = cuda_head_chunk_rows(a->rows, Vp);
    float *z = cuda_scratch_of<float>(d, (size_t)chunk * (size_t)Vp, "a chunk of logits");
    if (!z) return;
    for (int first = 0; first < a->rows; first += chunk) {
        const int n = a->rows - first < chunk ? a->rows - first : chunk;
        cuda_matmul_nt<T, float>(d, z, (const T *)a->h + (size_t)first * C, (const T *)a->weight, aligned_rows(n), Vp,
                                 C, 1, 0);
        if (a->cap > 0) { /* once, because the row is read many times */
            LAUNCH(logits_copy_kernel, (unsigned)n, 256, 0, d->stream, z, z, a->cap, Vp, Vp);
            CUDA_LAUNCHED(d, "logits_copy_kernel", "R %d, Vp %d", n, Vp);
        }
        sample_launch(d, a, first, n, z);
    }
}

#endif
