/* cuda_host.h - CUDA on the CPU: runs the project's kernels, compiled unchanged by g++ or clang++, without a GPU.
 *
 *   g++ -std=gnu++17 -fno-strict-aliasing -include tests/cuda_host/cuda_host.h -x c++ kernels.cu \
 *       tests/cuda_host/cuda_*.cpp
 *
 * One OS thread runs everything. Every CUDA thread of a block is a fiber with its own stack, which runs until it waits
 * for others (a barrier, a shuffle, mma.sync) or until an atomic lets it step aside. The blocks of a grid run one after
 * another. Whatever a GPU may do in any order is done here in an order drawn from a seed:
 *
 *   seed 0      threads and blocks in ascending order, streams without delay: the mode for debugging
 *   seed != 0   threads and blocks in random order; work on streams is deferred until something waits for it, and
 *               streams overtake one another as far as events allow
 *
 * So code that lacks a barrier computes a different result under some seed. Shared memory at the start of a block and
 * memory from cudaMalloc are filled with one of four patterns, chosen by the seed: 0xff (NaN, -1), 0x00, 0x7f (huge),
 * 0x3f (plausible). These faults are found at once, under every seed: divergent barriers, barriers after some threads
 * have returned, shuffles from lanes that do not take part, misaligned wide accesses and copies, copies outside an
 * allocation, launches that no GPU accepts, deadlocks. The address sanitizer finds accesses out of range. race.cpp
 * finds missing barriers even if no value changes.
 *
 * A failure prints one message to standard error (kernel, place of launch, block, thread) and exits with status 99.
 *
 * Environment: CUDA_HOST_SEED (0), CUDA_HOST_POISON (a byte that overrides the seed's pattern), CUDA_HOST_MEMORY
 * (memory of the simulated GPU in bytes, 8 GiB), CUDA_HOST_CAPABILITY (80), CUDA_HOST_NO_EPILOGUE (cublaslt_host.cpp).
 * Not supported: blocks that wait for one another, clusters, TMA, wgmma, named barriers, textures.
 *
 * The vector types, bf16 and API declarations come from the CUDA toolkit's own headers if they are on the include path,
 * else from twin/.
 */
#ifndef CUDA_HOST_H
#define CUDA_HOST_H

#ifdef __CUDACC__
#error "cuda_host.h is for the host compiler"
#endif
#define CUDA_HOST 1

/* These macros precede the toolkit's headers, which do not redefine them. A shared variable is a static whose mangled
 * name carries a tag. The run time uses the tag to find all of them (address, size) in the symbol table of its own
 * binary. */
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__   static __attribute__((abi_tag("cudahostshared")))

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>

#include <cuda_runtime.h>
#include <cuda_bf16.h>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __align__
#define __align__(n) __attribute__((aligned(n)))

#define CUDA_HOST_TEXT_(x) #x
#define CUDA_HOST_TEXT(x)  CUDA_HOST_TEXT_(x)
#define CUDA_HOST_SITE     __FILE__ ":" CUDA_HOST_TEXT(__LINE__)
/* Marks functions of the machine, not of the program that it runs: no sanitizer instruments them. */
#ifdef __clang__
#define CUDA_HOST_MACHINE __attribute__((noinline, no_sanitize("address", "undefined", "thread")))
#else
#define CUDA_HOST_MACHINE                                                                                              \
    __attribute__((noinline, no_sanitize("address"), no_sanitize("undefined"), no_sanitize("thread")))
#endif

/* ==== The machine (cuda_host.cpp) ==== */

/* A lane's part in a collective operation of its warp. */
struct CudaHostCall {
    const void *in;
    void *out;
    int lane; /* the lane that a shuffle reads; the predicate of a vote */
    uint32_t mask;
    int kind;
    const char *site;
};
enum {
    CUDA_HOST_SYNCWARP,
    CUDA_HOST_SHUFFLE,
    CUDA_HOST_VOTE,
    CUDA_HOST_MATCH,
    CUDA_HOST_REDUCE,
    CUDA_HOST_MMA,
    CUDA_HOST_LDMATRIX
};
typedef void CudaHostOperation(CudaHostCall **calls, uint32_t lanes);

struct CudaHostThread {
    void *stack_pointer;
    char *stack; /* NULL: not started */
    uint3 index;
    int linear, lane, warp;
    int state;
    const char *site; /* where the thread waits */
    int vote;
    uint32_t barriers;  /* number passed by the block so far */
    CudaHostCall *call; /* set while the thread waits for its warp */
};

/* Sets the seed from here on. This is the only function that a library of this harness exports, for tests that open the
 * library. */
extern "C" __attribute__((visibility("default"))) void cuda_host_seed(uint64_t seed);

#pragma GCC visibility push(hidden)
extern CudaHostThread *cuda_host_thread; /* the running thread; NULL in host code */
extern uint3 cuda_host_block_index;
extern dim3 cuda_host_block, cuda_host_grid;
extern char *cuda_host_dynamic; /* the block's dynamic shared memory */
extern size_t cuda_host_dynamic_size;

uint64_t cuda_host_random(void); /* drawn from the seed */
bool cuda_host_shuffled(void);   /* seed != 0 */
int cuda_host_poison(void);      /* the byte that new memory is filled with */
[[noreturn]] void cuda_host_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

struct CudaHostLaunch {
    const char *site, *name;
    dim3 grid, block;
    size_t shared;
    const void *kernel;
    std::function<void()> thread; /* the body of each CUDA thread */
    const void *arguments;        /* reading them does not count as an access to host memory */
    size_t arguments_size;
};
void cuda_host_run(const CudaHostLaunch &launch);
/* Barrier of the block. kind: 0 plain, 1 or, 2 and, 3 count. */
int cuda_host_barrier(const char *site, int kind, int predicate);
/* Barrier of the lanes in the mask. The last lane to arrive runs the operation for all of them. */
void cuda_host_collective(CudaHostCall *call, CudaHostOperation *operation);
void cuda_host_step_aside(void); /* sometimes lets another thread run */
uint32_t cuda_host_active(void);
void cuda_host_fence(void);

/* The run-time API (cuda_api.cpp). Work is a function that runs in the stream's order. Work that depends on other
 * processes returns false until it is done. */
void cuda_host_enqueue(cudaStream_t stream, const char *what, std::function<void()> work);
void cuda_host_enqueue_steps(cudaStream_t stream, const char *what, std::function<bool()> work);
void cuda_host_launch_on(cudaStream_t stream, const CudaHostLaunch &launch);
void cuda_host_drain(void); /* runs all remaining work of all streams */
/* Fails unless the `bytes` at p are within one allocation of the device. */
void cuda_host_need_device(const void *p, size_t bytes, const char *what);
bool cuda_host_is_device(const void *p, size_t bytes);

/* The race detector (race.cpp). Without it this function does nothing. */
void cuda_host_atomic_access(const void *p, size_t bytes);
#pragma GCC visibility pop

/* ==== The language ==== */

#define threadIdx (cuda_host_thread->index)
#define blockIdx  cuda_host_block_index
#define blockDim  cuda_host_block
#define gridDim   cuda_host_grid

#define SHARED_DYNAMIC(type, name) type *name = (type *)cuda_host_dynamic

/* As in a real launch, arguments are converted and copied once; each thread then gets its own copy. */
template <typename... P, typename... A>
void cuda_host_launch(const char *site, const char *name, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                      void (*kernel)(P...), A &&...arguments) {
    static_assert(sizeof...(P) == sizeof...(A), "launch: wrong number of arguments");
    auto copy = std::make_shared<std::tuple<std::decay_t<P>...>>(std::forward<A>(arguments)...);
    CudaHostLaunch launch;
    launch.site = site;
    launch.name = name;
    launch.grid = grid;
    launch.block = block;
    launch.shared = shared;
    launch.kernel = (const void *)kernel;
    launch.thread = [kernel, copy] { std::apply(kernel, *copy); };
    launch.arguments = copy.get();
    launch.arguments_size = sizeof(*copy);
    cuda_host_launch_on(stream, launch);
}
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                         \
    cuda_host_launch(CUDA_HOST_SITE, #kernel, (grid), (block), (shared_bytes), (stream), kernel, ##__VA_ARGS__)

template <typename F>
static inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute((const void *)kernel, attribute, value);
}
template <typename F> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, F *kernel) {
    return cudaFuncGetAttributes(attributes, (const void *)kernel);
}
template <typename F>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, F *kernel, int threads,
                                                                        size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, (const void *)kernel, threads, shared);
}
template <typename T>
static inline cudaError_t cudaMemcpyToSymbol(T &symbol, const void *source, size_t bytes, size_t offset = 0,
                                             cudaMemcpyKind = cudaMemcpyHostToDevice) {
    memcpy((char *)&symbol + offset, source, bytes);
    return cudaSuccess;
}

/* ==== Barriers and warps ==== */

#define __syncthreads()         ((void)cuda_host_barrier(CUDA_HOST_SITE, 0, 0))
#define __syncthreads_or(p)     cuda_host_barrier(CUDA_HOST_SITE, 1, (p))
#define __syncthreads_and(p)    cuda_host_barrier(CUDA_HOST_SITE, 2, (p))
#define __syncthreads_count(p)  cuda_host_barrier(CUDA_HOST_SITE, 3, (p))
#define __syncwarp(...)         cuda_host_syncwarp(CUDA_HOST_SITE, ##__VA_ARGS__)
#define __activemask()          cuda_host_active()
#define __threadfence()         cuda_host_fence()
#define __threadfence_block()   cuda_host_fence()
#define __threadfence_system()  cuda_host_fence()
#define __shfl_sync(...)        cuda_host_shuffle_index(CUDA_HOST_SITE, __VA_ARGS__)
#define __shfl_xor_sync(...)    cuda_host_shuffle_xor(CUDA_HOST_SITE, __VA_ARGS__)
#define __shfl_down_sync(...)   cuda_host_shuffle_down(CUDA_HOST_SITE, __VA_ARGS__)
#define __shfl_up_sync(...)     cuda_host_shuffle_up(CUDA_HOST_SITE, __VA_ARGS__)
#define __ballot_sync(mask, p)  cuda_host_vote(CUDA_HOST_SITE, mask, (p) != 0)
#define __any_sync(mask, p)     (cuda_host_vote(CUDA_HOST_SITE, mask, (p) != 0) != 0)
#define __all_sync(mask, p)     (cuda_host_vote(CUDA_HOST_SITE, mask, (p) == 0) == 0)
#define __match_any_sync(m, v)  cuda_host_match(CUDA_HOST_SITE, m, v)
#define __reduce_add_sync(m, v) cuda_host_reduce<CudaHostAdd>(CUDA_HOST_SITE, m, v)
#define __reduce_min_sync(m, v) cuda_host_reduce<CudaHostMin>(CUDA_HOST_SITE, m, v)
#define __reduce_max_sync(m, v) cuda_host_reduce<CudaHostMax>(CUDA_HOST_SITE, m, v)
#define __reduce_and_sync(m, v) cuda_host_reduce<CudaHostAnd>(CUDA_HOST_SITE, m, v)
#define __reduce_or_sync(m, v)  cuda_host_reduce<CudaHostOr>(CUDA_HOST_SITE, m, v)
#define __reduce_xor_sync(m, v) cuda_host_reduce<CudaHostXor>(CUDA_HOST_SITE, m, v)

/* Visits the lanes from the lowest on: for (CUDA_HOST_LANES(l, lanes)) */
#define CUDA_HOST_LANES(l, lanes)                                                                                      \
    uint32_t l##_left = (lanes), l = l##_left ? (uint32_t)__builtin_ctz(l##_left) : 0;                                 \
    l##_left;                                                                                                          \
    l##_left &= l##_left - 1, l = l##_left ? (uint32_t)__builtin_ctz(l##_left) : 0

void cuda_host_syncwarp(const char *site, uint32_t mask = 0xffffffffu);
uint32_t cuda_host_vote(const char *site, uint32_t mask, bool predicate);

template <size_t SIZE> CUDA_HOST_MACHINE void cuda_host_shuffle_all(CudaHostCall **calls, uint32_t lanes) {
    char values[32][SIZE];
    for (CUDA_HOST_LANES(l, lanes)) memcpy(values[l], calls[l]->in, SIZE);
    for (CUDA_HOST_LANES(l, lanes)) {
        int from = calls[l]->lane;
        if (!(lanes >> from & 1))
            cuda_host_fail("shuffle at %s: lane %d reads lane %d, which does not take part", calls[l]->site, (int)l,
                           from);
        memcpy(calls[l]->out, values[from], SIZE);
    }
}
template <typename T> static inline T cuda_host_shuffle(const char *site, uint32_t mask, T value, int from) {
    T out = value;
    CudaHostCall call = {&value, &out, from, mask, CUDA_HOST_SHUFFLE, site};
    cuda_host_collective(&call, cuda_host_shuffle_all<sizeof(T)>);
    return out;
}
template <typename T>
static inline T cuda_host_shuffle_index(const char *site, uint32_t mask, T value, int lane, int width = 32) {
    int first = cuda_host_thread->lane & ~(width - 1);
    return cuda_host_shuffle(site, mask, value, first | (lane & (width - 1)));
}
template <typename T>
static inline T cuda_host_shuffle_xor(const char *site, uint32_t mask, T value, int bits, int width = 32) {
    int me = cuda_host_thread->lane, from = me ^ bits;
    return cuda_host_shuffle(site, mask, value, from >= (me & ~(width - 1)) + width ? me : from);
}
template <typename T>
static inline T cuda_host_shuffle_down(const char *site, uint32_t mask, T value, unsigned delta, int width = 32) {
    int me = cuda_host_thread->lane;
    return cuda_host_shuffle(site, mask, value, (me & (width - 1)) + (int)delta >= width ? me : me + (int)delta);
}
template <typename T>
static inline T cuda_host_shuffle_up(const char *site, uint32_t mask, T value, unsigned delta, int width = 32) {
    int me = cuda_host_thread->lane;
    return cuda_host_shuffle(site, mask, value, (me & (width - 1)) < (int)delta ? me : me - (int)delta);
}

template <typename T> CUDA_HOST_MACHINE void cuda_host_match_all(CudaHostCall **calls, uint32_t lanes) {
    for (CUDA_HOST_LANES(l, lanes)) {
        uint32_t equal = 0;
        for (CUDA_HOST_LANES(k, lanes)) equal |= (uint32_t)(*(const T *)calls[k]->in == *(const T *)calls[l]->in) << k;
        *(uint32_t *)calls[l]->out = equal;
    }
}
template <typename T> static inline uint32_t cuda_host_match(const char *site, uint32_t mask, T value) {
    uint32_t out = 0;
    CudaHostCall call = {&value, &out, 0, mask, CUDA_HOST_MATCH, site};
    cuda_host_collective(&call, cuda_host_match_all<T>);
    return out;
}

struct CudaHostAdd {
    template <typename T> static T of(T a, T b) { return (T)(a + b); }
};
struct CudaHostMin {
    template <typename T> static T of(T a, T b) { return b < a ? b : a; }
};
struct CudaHostMax {
    template <typename T> static T of(T a, T b) { return b > a ? b : a; }
};
struct CudaHostAnd {
    template <typename T> static T of(T a, T b) { return a & b; }
};
struct CudaHostOr {
    template <typename T> static T of(T a, T b) { return a | b; }
};
struct CudaHostXor {
    template <typename T> static T of(T a, T b) { return a ^ b; }
};
template <typename F, typename T> CUDA_HOST_MACHINE void cuda_host_reduce_all(CudaHostCall **calls, uint32_t lanes) {
    T sum = *(const T *)calls[__builtin_ctz(lanes)]->in;
    for (CUDA_HOST_LANES(l, lanes & (lanes - 1))) sum = F::of(sum, *(const T *)calls[l]->in);
    for (CUDA_HOST_LANES(l, lanes)) *(T *)calls[l]->out = sum;
}
template <typename F, typename T> static inline T cuda_host_reduce(const char *site, uint32_t mask, T value) {
    static_assert(std::is_same<T, int>::value || std::is_same<T, unsigned>::value, "__reduce_*_sync: int or unsigned");
    T out = value;
    CudaHostCall call = {&value, &out, 0, mask, CUDA_HOST_REDUCE, site};
    cuda_host_collective(&call, cuda_host_reduce_all<F, T>);
    return out;
}

/* ==== Atomics: nothing runs between the load and the store, but another thread may run before them ==== */

/* Reports the access to the race detector; the other sanitizers see it themselves. */
template <typename T, typename F> __attribute__((noinline, no_sanitize("thread"))) T cuda_host_change(T *p, F change) {
    if ((uintptr_t)p % sizeof(T)) cuda_host_fail("atomic on %p, which is not a multiple of %zu", (void *)p, sizeof(T));
    cuda_host_step_aside();
    cuda_host_atomic_access(p, sizeof(T));
    T old = *p;
    *p = change(old);
    return old;
}
/* The value has the type of the target, as in CUDA's overloads. */
#define CUDA_HOST_ATOMIC(name, expression)                                                                             \
    template <typename T> static inline T name(T *p, std::common_type_t<T> v) {                                        \
        return cuda_host_change(p, [&](T old) {                                                                        \
            (void)old;                                                                                                 \
            return (T)(expression);                                                                                    \
        });                                                                                                            \
    }
CUDA_HOST_ATOMIC(atomicAdd, old + v)
CUDA_HOST_ATOMIC(atomicSub, old - v)
CUDA_HOST_ATOMIC(atomicMax, v > old ? v : old)
CUDA_HOST_ATOMIC(atomicMin, v < old ? v : old)
CUDA_HOST_ATOMIC(atomicExch, v)
CUDA_HOST_ATOMIC(atomicAnd, old &v)
CUDA_HOST_ATOMIC(atomicOr, old | v)
CUDA_HOST_ATOMIC(atomicXor, old ^ v)
CUDA_HOST_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
CUDA_HOST_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
template <typename T> static inline T atomicCAS(T *p, std::common_type_t<T> expected, std::common_type_t<T> v) {
    return cuda_host_change(p, [&](T old) { return old == expected ? v : old; });
}

/* ==== Loads, stores, bits, mathematics ==== */

template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldcs(const T *p) { return *p; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
template <typename T> static inline T __ldca(const T *p) { return *p; }
template <typename T> static inline void __stcs(T *p, T v) { *p = v; }
template <typename T> static inline void __stcg(T *p, T v) { *p = v; }
template <typename T> static inline void __stwb(T *p, T v) { *p = v; }

template <typename To, typename From> static inline To cuda_host_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits: sizes differ");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
static inline unsigned __float_as_uint(float x) { return cuda_host_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return cuda_host_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return cuda_host_bits<float>(x); }
static inline float __int_as_float(int x) { return cuda_host_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return cuda_host_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return cuda_host_bits<double>(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned select) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= (unsigned)(bytes >> 8 * (select >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}

/* The C library also declares functions of these names. */
#define __expf  expf
#define __logf  logf
#define __log2f log2f
#define __sinf  sinf
#define __cosf  cosf
#define __powf  powf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline float __saturatef(float x) { return x > 0 ? fminf(x, 1) : 0; }
static inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline unsigned __float2uint_rz(float x) { return (unsigned)x; }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __double2float_rn(double x) { return (float)x; }
#ifndef CUDA_HOST_TWIN
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __float2bfloat16_rn(fmaf((float)a, (float)b, (float)c));
}
#endif
using std::max;
using std::min;
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline long long clock64() { return 0; }
#define __trap()       cuda_host_fail("__trap() at %s", CUDA_HOST_SITE)
#define __nanosleep(n) cuda_host_step_aside()

#include "ptx_host.h"

#endif
