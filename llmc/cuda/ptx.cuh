/* ptx.cuh - PTX instructions and launches: the only code that differs between the CUDA compiler and the host compiler.
 *
 * Kernels (the .cuh files and cuda.cu) contain no inline assembly, no <<<>>> and no `extern __shared__`. They call the
 * functions and macros of this file. Under nvcc each function is one PTX instruction. Under g++ or clang++ with
 * tests/cuda_host it is C with the same documented meaning (tests/cuda_host/ptx_host.h), so that the same kernels can
 * be tested on a machine without a GPU.
 *
 *   LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
 *       kernel<<<grid, block, shared_bytes, stream>>>(arguments...). A template's name that contains a comma must be in
 *       parentheses: LAUNCH((tile_kernel<T, 64>), ...). All template arguments must be given explicitly.
 *   SHARED_DYNAMIC(type, name);
 *       type *name = the block's dynamic shared memory, 128-byte aligned.
 *
 *   mma_m16n8k16_bf16   d = a b + c, 16x8x16 by one warp, bf16 in, float32 sums        (sm_80)
 *   ldmatrix_x4 _x2     8x8 tiles of 16-bit elements from shared memory to fragments   (sm_75)
 *   cp_async_16         16 bytes from global to shared memory, bypassing registers     (sm_80)
 *   wide_load _store    16 bytes at a time; the address must be a multiple of 16
 *   fast_exp2           2^x, about 2 ulp
 *   fast_reciprocal     1 / x, about 1 ulp
 *
 * Fragments of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"), for lane l with
 * g = l / 4 and t = l % 4. Each 32-bit register holds two adjacent elements, the first in its lower half:
 *   a[0] = A[g][2t, 2t+1]   a[1] = A[g+8][2t, ..]   a[2] = A[g][2t+8, ..]   a[3] = A[g+8][2t+8, ..]      A is 16 x 16
 *   b[0] = B[2t, 2t+1][g]   b[1] = B[2t+8, ..][g]                                                        B is 16 x 8
 *   c[0], c[1] = C[g][2t, 2t+1]   c[2], c[3] = C[g+8][2t, 2t+1]                                          C is 16 x 8
 * ldmatrix_x4: lane l gives the address of row l % 8 of tile l / 8. In r[i] it receives elements 2t, 2t+1 of row g of
 * tile i; with _trans it receives rows 2t, 2t+1 of column g.
 */
#ifndef LLMC_CUDA_PTX_CUH
#define LLMC_CUDA_PTX_CUH

#include <stdint.h>
#include <cuda_runtime.h>
#include <cuda_bf16.h>

#ifdef __CUDACC__

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                         \
    kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

extern __shared__ __align__(128) unsigned char shared_dynamic_memory[];
#define SHARED_DYNAMIC(type, name) type *name = (type *)shared_dynamic_memory

static __device__ __forceinline__ unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                                         const float (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                   "f"(c[3]));
}

static __device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
/* Only the addresses of lanes 0..15 are used. */
static __device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

static __device__ __forceinline__ void cp_async_16(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
/* If valid is false, writes sixteen zero bytes and reads nothing. */
static __device__ __forceinline__ void cp_async_16_zfill(void *shared, const void *global, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Waits until at most N of this thread's newest groups are in flight. To use other threads' copies, synchronise after
 * it. */
template <int N> static __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

static __device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ float fast_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#define PTX_CHECK_WIDE(p) ((void)0)

#elif !defined(CUDA_HOST)
#error "ptx.cuh: compile with nvcc, or on the host with -include tests/cuda_host/cuda_host.h"
#endif

/* ==== Sixteen bytes at a time ==== */

template <typename T> struct alignas(16) Wide {
    enum { N = 16 / sizeof(T) };
    T v[N];
};

template <typename T> static __device__ __forceinline__ Wide<T> wide_of(uint4 bits) {
    Wide<T> w;
    static_assert(sizeof(w) == sizeof(bits), "Wide is 16 bytes");
    memcpy(&w, &bits, sizeof(w));
    return w;
}
template <typename T> static __device__ __forceinline__ uint4 wide_bits(const Wide<T> &w) {
    uint4 bits;
    memcpy(&bits, &w, sizeof(bits));
    return bits;
}

template <typename T> static __device__ __forceinline__ Wide<T> wide_load(const T *p) {
    PTX_CHECK_WIDE(p);
    return wide_of<T>(*(const uint4 *)p);
}
/* The same for data that is not read again soon: the caches evict it first (ld.global.cs). */
template <typename T> static __device__ __forceinline__ Wide<T> wide_load_once(const T *p) {
    PTX_CHECK_WIDE(p);
    return wide_of<T>(__ldcs((const uint4 *)p));
}
template <typename T> static __device__ __forceinline__ void wide_store(T *p, const Wide<T> &w) {
    PTX_CHECK_WIDE(p);
    *(uint4 *)p = wide_bits(w);
}
template <typename T> static __device__ __forceinline__ void wide_store_once(T *p, const Wide<T> &w) {
    PTX_CHECK_WIDE(p);
    __stcs((uint4 *)p, wide_bits(w));
}
template <typename T> static __device__ __forceinline__ Wide<T> wide_fill(float x) {
    Wide<T> w;
    for (int i = 0; i < Wide<T>::N; i++) w.v[i] = (T)x;
    return w;
}

/* tanh(x) = 1 - 2 / (e^2x + 1), with an absolute error of about 2^-22. (tanh.approx is off by 2^-11.) */
static __device__ __forceinline__ float fast_tanh(float x) {
    return fmaf(-2.0f, fast_reciprocal(fast_exp2(x * 2.885390081777927f) + 1.0f), 1.0f);
}

/* ==== Pairs of bf16 in a register, the first in the lower half ==== */

static __device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t u;
    memcpy(&u, &pair, sizeof(u));
    return u;
}
static __device__ __forceinline__ float unpack_bf16_low(uint32_t u) { return __uint_as_float(u << 16); }
static __device__ __forceinline__ float unpack_bf16_high(uint32_t u) { return __uint_as_float(u & 0xffff0000u); }

#endif
