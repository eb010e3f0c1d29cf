/* common.cuh - shared parts of all CUDA kernels: the device, checked errors, scratch memory, reductions.
 *
 * Only llmc/cuda/cuda.cu, the kernel tests and dev/cuda include the .cuh files. They are C++17 and compile unchanged
 * with nvcc and, through tests/cuda_host, with g++ and clang++. The differences between the two are confined to
 * ptx.cuh.
 *
 * Errors are sticky. A failed call stores one line in the device, with the call, file, line and shape. From then on
 * operations do nothing, and sync() returns the message:
 *
 *     CUDA_CHECK(d, cudaMemsetAsync(p, 0, bytes, d->stream), "%zu bytes", bytes);
 *     LAUNCH((row_kernel<T>), N, 256, 0, d->stream, out, x, C);
 *     CUDA_LAUNCHED(d, "row_kernel", "N %d, C %d", N, C);
 *
 * Scratch memory lasts for one operation. cuda_scratch() takes it from one block owned by the device, which grows in
 * stream order when an operation needs more than any before it. Kernels are templates on T, the type of weights and
 * activations, which is float or __nv_bfloat16; they compute in float.
 */
#ifndef LLMC_CUDA_COMMON_CUH
#define LLMC_CUDA_COMMON_CUH

#include "../base/error.h"    /* PRINTF_LIKE, Error, error_set */
#include "../model/backend.h" /* Dtype */
#include "ptx.cuh"            /* wide_load, wide_store */
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <unordered_map>
#include <vector>

typedef __nv_bfloat16 bf16;

struct MatmulPlan; /* matmul.cuh */
struct Queue;      /* queue.cuh */

/* One block of device memory from which operations take scratch memory; `used` is reset to 0 before each operation. */
struct Scratch {
    char *block;
    size_t size, used, wanted;    /* wanted: total bytes requested by the current operation */
    std::vector<void *> outgrown; /* blocks that this operation may still read; freed before the next one */
    size_t generation;            /* number of blocks so far; a captured graph is valid for one of them */
};

struct Device {
    Dtype dtype;
    int index, processors, major, minor; /* streaming multiprocessors, compute capability */
    size_t shared_limit;                 /* maximum bytes of shared memory per block */
    cudaStream_t stream;
    cublasLtHandle_t lt;
    void *lt_workspace;
    size_t lt_workspace_bytes;
    Scratch scratch;
    std::unordered_map<void *, size_t> held; /* allocations of alloc() and their sizes */
    size_t alive, most;                      /* bytes allocated now, and their peak */
    MatmulPlan *plans;
    Queue *queue;
    double peak; /* measured FLOP/s; 0: not measured yet */
    Error error;
    bool failed;
};

/* ---- errors ---------------------------------------------------------------------------------------------------- */

/* Keeps the first message. Returns false. */
PRINTF_LIKE(2, 3) static inline bool cuda_fail(Device *d, const char *format, ...) {
    if (d->failed) return false;
    char text[sizeof d->error.text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    d->failed = true;
    return error_set(&d->error, "%s", text);
}

PRINTF_LIKE(6, 7)
static inline bool cuda_failed_call(Device *d, const char *what, const char *call, const char *file, int line,
                                    const char *format, ...) {
    if (d->failed) return false;
    char shape[256];
    va_list args;
    va_start(args, format);
    vsnprintf(shape, sizeof shape, format, args);
    va_end(args);
    const char *slash = strrchr(file, '/');
    return cuda_fail(d, "cuda: %.200s at %s:%d%s%s%s: %s", call, slash ? slash + 1 : file, line, shape[0] ? " (" : "",
                     shape, shape[0] ? ")" : "", what);
}

/* True if the call succeeds. The arguments after the call describe the shape as for printf; pass "" if there is
 * none. */
#define CUDA_CHECK(d, call, ...)   cuda_check(d, call, #call, __FILE__, __LINE__, __VA_ARGS__)
#define CUBLAS_CHECK(d, call, ...) cublas_check(d, call, #call, __FILE__, __LINE__, __VA_ARGS__)
/* Used after LAUNCH: checks that the launch itself was accepted. */
#define CUDA_LAUNCHED(d, kernel, ...) cuda_check(d, cudaGetLastError(), kernel, __FILE__, __LINE__, __VA_ARGS__)

template <typename... A>
static inline bool cuda_check(Device *d, cudaError_t status, const char *call, const char *file, int line,
                              const char *format, A... args) {
    if (status == cudaSuccess) return true;
    char shape[256];
    snprintf(shape, sizeof shape, "%s", "");
    if constexpr (sizeof...(A) > 0) snprintf(shape, sizeof shape, format, args...);
    else snprintf(shape, sizeof shape, "%s", format);
    return cuda_failed_call(d, cudaGetErrorString(status), call, file, line, "%s", shape);
}

template <typename... A>
static inline bool cublas_check(Device *d, cublasStatus_t status, const char *call, const char *file, int line,
                                const char *format, A... args) {
    if (status == CUBLAS_STATUS_SUCCESS) return true;
    char shape[256];
    if constexpr (sizeof...(A) > 0) snprintf(shape, sizeof shape, format, args...);
    else snprintf(shape, sizeof shape, "%s", format);
    return cuda_failed_call(d, cublasLtGetStatusString(status), call, file, line, "%s", shape);
}

/* ---- scratch memory -------------------------------------------------------------------------------------------- */

/* Must be called before each operation. */
static inline void cuda_scratch_begin(Device *d) {
    Scratch *s = &d->scratch;
    s->used = s->wanted = 0;
    for (void *block : s->outgrown) CUDA_CHECK(d, cudaFreeAsync(block, d->stream), "scratch");
    s->outgrown.clear();
}

/* Returns `bytes` of device memory for this operation, 256-byte aligned and uninitialised; NULL after a failure. */
static inline void *cuda_scratch(Device *d, size_t bytes, const char *what) {
    Scratch *s = &d->scratch;
    bytes = (bytes + 255) / 256 * 256;
    s->wanted += bytes;
    if (s->used + bytes > s->size) {
        size_t free_bytes = 0, total = 0;
        const size_t size = s->wanted + s->wanted / 4;
        char *block = NULL;
        if (d->failed) return NULL;
        if (s->block) s->outgrown.push_back(s->block);
        s->block = NULL;
        s->size = s->used = 0;
        if (cudaMallocAsync((void **)&block, size, d->stream) != cudaSuccess) {
            (void)cudaGetLastError();
            (void)cudaMemGetInfo(&free_bytes, &total);
            cuda_fail(d, "out of device memory: %s needs %zu bytes, the GPU has %zu of %zu free; lower --micro-tokens",
                      what, size, free_bytes, total);
            return NULL;
        }
        s->block = block;
        s->size = size;
        s->generation++;
    }
    void *memory = s->block + s->used;
    s->used += bytes;
    return memory;
}

template <typename X> static inline X *cuda_scratch_of(Device *d, size_t count, const char *what) {
    return (X *)cuda_scratch(d, count * sizeof(X), what);
}

/* ---- sizes ----------------------------------------------------------------------------------------------------- */

static inline size_t cuda_ceil(size_t a, size_t b) { return (a + b - 1) / b; }

/* True if rows of `columns` elements of T at these pointers can be accessed 16 bytes at a time. */
template <typename T, typename... P> static inline bool cuda_wide(size_t columns, P... pointers) {
    return columns % (16 / sizeof(T)) == 0 && (((uintptr_t)pointers % 16 == 0) && ...);
}

/* Number of blocks for a grid-stride loop over `items`: at most enough to fill every multiprocessor once. */
static inline unsigned cuda_blocks(const Device *d, size_t items, unsigned threads) {
    const size_t blocks = cuda_ceil(items, threads), most = (size_t)d->processors * (2048 / threads);
    return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

/* ---- on the device --------------------------------------------------------------------------------------------- */

__device__ static inline float to_float(float x) { return x; }
__device__ static inline float to_float(bf16 x) { return __bfloat162float(x); }
template <typename T> __device__ static inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

/* Loads W elements of any type as float, in words of 16 bytes, or one element if W is 1. */
template <int W, typename T> __device__ static inline void lane_load(float (&to)[W], const T *from) {
    if constexpr (W == 1) to[0] = to_float(from[0]);
    else {
        constexpr int N = 16 / (int)sizeof(T);
        static_assert(W % N == 0, "whole 16-byte words");
#pragma unroll
        for (int part = 0; part < W; part += N) {
            const Wide<T> word = wide_load(from + part);
#pragma unroll
            for (int k = 0; k < N; k++) to[part + k] = to_float(word.v[k]);
        }
    }
}

/* Stores W floats, rounded to T, in the same way. */
template <int W, typename T> __device__ static inline void lane_store(T *to, const float (&from)[W]) {
    if constexpr (W == 1) to[0] = from_float<T>(from[0]);
    else {
        constexpr int N = 16 / (int)sizeof(T);
        static_assert(W % N == 0, "whole 16-byte words");
#pragma unroll
        for (int part = 0; part < W; part += N) {
            Wide<T> word;
#pragma unroll
            for (int k = 0; k < N; k++) word.v[k] = from_float<T>(from[part + k]);
            wide_store(to + part, word);
        }
    }
}

/* Sums x over the 32 lanes in a fixed order. Every lane gets the result. */
template <typename X> __device__ static inline X warp_sum(X x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ static inline float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

/* Sums x (or takes its maximum) over THREADS threads in a fixed order. Every thread gets the result. All threads of the
 * block must call it. It may be called again immediately. */
template <int THREADS, typename X> __device__ static inline X block_sum(X x) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");
    __shared__ X part[THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = warp_sum(x);
    if (lane == 0) part[warp] = x;
    __syncthreads();
    X sum = lane < THREADS / 32 ? part[lane] : (X)0;
    sum = warp_sum(sum);
    __syncthreads();
    return sum;
}

template <int THREADS> __device__ static inline float block_max(float x) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");
    __shared__ float part[THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = warp_max(x);
    if (lane == 0) part[warp] = x;
    __syncthreads();
    float most = lane < THREADS / 32 ? part[lane] : -INFINITY;
    most = warp_max(most);
    __syncthreads();
    return most;
}

/* Philox4x32-10 (Salmon et al. 2011); gives the same numbers as random.h on the host. */
__device__ static inline void cuda_philox(uint32_t (&c)[4], uint32_t k0, uint32_t k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t high0 = __umulhi(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
        const uint32_t high1 = __umulhi(0xCD9E8D57u, c[2]), low1 = 0xCD9E8D57u * c[2];
        const uint32_t c0 = high1 ^ c[1] ^ k0, c2 = high0 ^ c[3] ^ k1;
        c[0] = c0;
        c[1] = low1;
        c[2] = c2;
        c[3] = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* random_uniform() of random.h: in [0, 1), a multiple of 2^-24. */
__device__ static inline float cuda_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t c[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    cuda_philox(c, (uint32_t)seed, (uint32_t)(seed >> 32));
    return (float)(c[1] >> 8) * 0x1p-24f;
}

#endif
