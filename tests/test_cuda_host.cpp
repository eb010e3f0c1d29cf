/* test_cuda_host.cpp - tests of the host harness: correct programs run correctly under every seed, and planted faults
 * are found.
 *
 * The test is compiled three ways: plain, with the address sanitizer and with the race detector. Each build must find
 * different faults, as stated at each fault. A fault runs in a child process, which must exit with the right status and
 * print the right message. The fragments of mma.sync are checked against the index formulas of the PTX ISA, repeated
 * here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>
extern "C" {
#include <cmocka.h>
}
#include <cublasLt.h>
#include <nccl.h>

#include "../llmc/cuda/ptx.cuh" /* LAUNCH, cp_async_wait, cp_async_commit, cp_async_16, ... */
#include "cuda_host/machine.h"

typedef __nv_bfloat16 bf16;
enum { SEEDS = 8 };

#if defined(__SANITIZE_ADDRESS__)
enum { ASAN = 1 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { ASAN = 1 };
#else
enum { ASAN = 0 };
#endif
#else
enum { ASAN = 0 };
#endif

/* ==== Device memory ==== */

template <typename T> struct Device {
    T *p;
    size_t n;
    explicit Device(size_t count) : n(count) { assert_int_equal(cudaMalloc((void **)&p, n * sizeof(T)), cudaSuccess); }
    explicit Device(const std::vector<T> &x) : Device(x.size()) { put(x); }
    Device(const Device &) = delete;
    Device &operator=(const Device &) = delete;
    ~Device() { cudaFree(p); }
    void put(const std::vector<T> &x) { cudaMemcpy(p, x.data(), n * sizeof(T), cudaMemcpyHostToDevice); }
    std::vector<T> get() const {
        std::vector<T> x(n);
        cudaMemcpy(x.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost);
        return x;
    }
};

static uint32_t state = 1;
static float uniform(void) { /* in (-1, 1) */
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1;
}
static std::vector<float> uniforms(size_t n) {
    std::vector<float> x(n);
    for (float &e : x) e = uniform();
    return x;
}
static std::vector<bf16> rounded(const std::vector<float> &x) {
    std::vector<bf16> y(x.size());
    for (size_t i = 0; i < x.size(); i++) y[i] = __float2bfloat16(x[i]);
    return y;
}

/* ==== Correct programs ==== */

__global__ void where_kernel(int *out, int plane) {
    int thread = (int)((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
    int block = (int)((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
    out[block * plane + thread] += block * 1000 + thread;
}
static void test_indices(void **) {
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        dim3 grid(3, 2, 2), block(5, 4, 3);
        Device<int> out(12 * 60);
        cudaMemset(out.p, 0, 12 * 60 * sizeof(int));
        LAUNCH(where_kernel, grid, block, 0, 0, out.p, 60);
        std::vector<int> x = out.get();
        for (int b = 0; b < 12; b++)
            for (int t = 0; t < 60; t++) assert_int_equal(x[(size_t)(b * 60 + t)], b * 1000 + t);
    }
}

template <typename T, int THREADS>
__global__ void __launch_bounds__(THREADS) sum_kernel(float *out, const T *x, int n) {
    __shared__ float part[THREADS / 32];
    SHARED_DYNAMIC(float, total);
    float sum = 0;
    for (int i = (int)threadIdx.x; i < n; i += THREADS) sum += (float)x[i];
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        float s = threadIdx.x < THREADS / 32 ? part[threadIdx.x] : 0;
        for (int d = 16; d > 0; d /= 2) s += __shfl_down_sync(0xffffffffu, s, (unsigned)d);
        if (threadIdx.x == 0) total[0] = s;
    }
    __syncthreads();
    if (threadIdx.x == THREADS - 1) atomicAdd(out, total[0]);
}
static void test_block_sum(void **) {
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        std::vector<float> ones(1000, 1.0f);
        Device<bf16> x(rounded(ones));
        Device<float> out(1);
        cudaMemset(out.p, 0, sizeof(float));
        LAUNCH((sum_kernel<bf16, 128>), 7, 128, sizeof(float), 0, out.p, x.p, 1000);
        assert_true(out.get()[0] == 7000);
    }
}

struct Small {
    int a;
    float b;
};
__global__ void warp_kernel(int *out, Small s) {
    int lane = (int)threadIdx.x;
    int *o = out + lane * 16;
    o[0] = __shfl_sync(0xffffffffu, lane, 5);
    o[1] = __shfl_sync(0xffffffffu, lane, 3, 8);
    o[2] = __shfl_up_sync(0xffffffffu, lane, 2);
    o[3] = __shfl_down_sync(0xffffffffu, lane, 2, 16);
    o[4] = __shfl_xor_sync(0xffffffffu, lane, 1);
    o[5] = (int)__ballot_sync(0xffffffffu, lane % 3 == 0);
    o[6] = __any_sync(0xffffffffu, lane == 31);
    o[7] = __all_sync(0xffffffffu, lane < 31);
    o[8] = (int)__match_any_sync(0xffffffffu, lane % 4);
    o[9] = __reduce_add_sync(0xffffffffu, lane);
    o[10] = (int)__reduce_max_sync(0xffffffffu, (unsigned)lane);
    o[11] = s.a + (int)s.b;
    o[12] = -1;
    if (lane < 8) o[12] = __reduce_min_sync(0xffu, lane + 3);
    o[13] = (int)__activemask();
    __syncwarp();
}
static void test_warp(void **) {
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        Device<int> out(32 * 16);
        Small s = {40, 2.5f};
        LAUNCH(warp_kernel, 1, 32, 0, 0, out.p, s);
        std::vector<int> x = out.get();
        uint32_t thirds = 0;
        for (int l = 0; l < 32; l += 3) thirds |= 1u << l;
        for (int l = 0; l < 32; l++) {
            const int *o = &x[(size_t)l * 16];
            assert_int_equal(o[0], 5);
            assert_int_equal(o[1], l / 8 * 8 + 3);
            assert_int_equal(o[2], l < 2 ? l : l - 2);
            assert_int_equal(o[3], l % 16 < 14 ? l + 2 : l);
            assert_int_equal(o[4], l ^ 1);
            assert_int_equal((uint32_t)o[5], thirds);
            assert_int_equal(o[6], 1);
            assert_int_equal(o[7], 0);
            assert_int_equal((uint32_t)o[8], 0x11111111u << l % 4);
            assert_int_equal(o[9], 496);
            assert_int_equal(o[10], 31);
            assert_int_equal(o[11], 42);
            assert_int_equal(o[12], l < 8 ? 3 : -1);
            assert_int_equal((uint32_t)o[13], 0xffffffffu);
        }
    }
}

__global__ void votes_kernel(int *out) {
    int or_ = __syncthreads_or(threadIdx.x == 77), and_ = __syncthreads_and(threadIdx.x < 99);
    int count = __syncthreads_count(threadIdx.x % 2);
    if (threadIdx.x == 0) {
        out[0] = or_ != 0;
        out[1] = and_ != 0;
        out[2] = count;
    }
}
static void test_votes(void **) {
    Device<int> out(3);
    LAUNCH(votes_kernel, 1, 100, 0, 0, out.p);
    assert_int_equal(out.get()[0], 1);
    assert_int_equal(out.get()[1], 0);
    assert_int_equal(out.get()[2], 50);
}

/* A spin lock, and the other atomics. */
__global__ void atomics_kernel(int *lock, int *guarded, unsigned *x, unsigned long long *wide) {
    while (atomicCAS(lock, 0, 1) != 0) __nanosleep(20);
    __threadfence();
    *guarded += 1;
    __threadfence();
    atomicExch(lock, 0);
    atomicMax(&x[0], threadIdx.x);
    atomicMin(&x[1], threadIdx.x);
    atomicOr(&x[2], 1u << threadIdx.x % 8);
    atomicAnd(&x[3], ~(1u << threadIdx.x % 8));
    atomicXor(&x[4], 1u);
    atomicInc(&x[5], 9u);
    atomicSub(&x[6], 1u);
    atomicAdd(wide, 1ull << 32);
}
static void test_atomics(void **) {
    if (cuda_host_race_detector()) return; /* the race detector knows no locks beyond the pattern of the last block */
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        Device<int> lock(std::vector<int>(1, 0)), guarded(std::vector<int>(1, 0));
        Device<unsigned> x(std::vector<unsigned>({0u, 99u, 0u, 0xffu, 0u, 0u, 200u}));
        Device<unsigned long long> wide(std::vector<unsigned long long>(1, 5));
        LAUNCH(atomics_kernel, 2, 63, 0, 0, lock.p, guarded.p, x.p, wide.p);
        std::vector<unsigned> y = x.get();
        assert_int_equal(guarded.get()[0], 126);
        assert_int_equal(y[0], 62);
        assert_int_equal(y[1], 0);
        assert_int_equal(y[2], 0xff);
        assert_int_equal(y[3], 0);
        assert_int_equal(y[4], 0);
        assert_int_equal(y[5], 126 % 10);
        assert_int_equal(y[6], 74);
        assert_true(wide.get()[0] == (126ull << 32) + 5);
    }
}

/* The last block to finish adds up the results of all blocks: correct only with the fences. */
template <bool FENCES> __global__ void last_block_kernel(float *out, float *part, unsigned *count, const float *x) {
    __shared__ bool last;
    float v = x[blockIdx.x * 32 + threadIdx.x];
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    if (threadIdx.x == 0) {
        part[blockIdx.x] = v;
        if (FENCES) __threadfence();
        last = atomicAdd(count, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    if (FENCES) __threadfence();
    if (threadIdx.x == 0) {
        float sum = 0;
        for (unsigned b = 0; b < gridDim.x; b++) sum += part[b];
        *out = sum;
    }
}
static void test_last_block(void **) {
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        Device<float> x(std::vector<float>(320, 0.5f)), part(10), out(1);
        Device<unsigned> count(std::vector<unsigned>(1, 0));
        LAUNCH((last_block_kernel<true>), 10, 32, 0, 0, out.p, part.p, count.p, x.p);
        assert_true(out.get()[0] == 160);
    }
}

/* ==== Instructions ==== */

__global__ void mma_kernel(float *d, const uint32_t *a, const uint32_t *b, const float *c) {
    uint32_t ra[4], rb[2];
    float rc[4], rd[4];
    for (int i = 0; i < 4; i++) {
        ra[i] = a[threadIdx.x * 4 + i];
        rc[i] = c[threadIdx.x * 4 + i];
    }
    for (int i = 0; i < 2; i++) rb[i] = b[threadIdx.x * 2 + i];
    mma_m16n8k16_bf16(rd, ra, rb, rc);
    for (int i = 0; i < 4; i++) d[threadIdx.x * 4 + i] = rd[i];
}
/* PTX ISA, "Matrix Fragments for mma.m16n8k16": groupID = laneid >> 2, threadID_in_group = laneid % 4, and
 *   A  row = groupID for ai where 0 <= i < 2 || 4 <= i < 6, groupID + 8 otherwise
 *      col = threadID_in_group * 2 + (i & 1) for ai where i < 4, + 8 otherwise
 *   B  row = threadID_in_group * 2 + (i & 1) for bi where i < 2, + 8 otherwise; col = groupID
 *   C  row = groupID for ci where i < 2, groupID + 8 otherwise; col = threadID_in_group * 2 + (i & 1) */
static int a_row(int lane, int i) { return (lane >> 2) + ((0 <= i && i < 2) || (4 <= i && i < 6) ? 0 : 8); }
static int a_column(int lane, int i) { return (lane % 4) * 2 + (i & 1) + (i < 4 ? 0 : 8); }
static int b_row(int lane, int i) { return (lane % 4) * 2 + (i & 1) + (i < 2 ? 0 : 8); }
static int b_column(int lane, int) { return lane >> 2; }
static int c_row(int lane, int i) { return (lane >> 2) + (i < 2 ? 0 : 8); }
static int c_column(int lane, int i) { return (lane % 4) * 2 + (i & 1); }

static uint32_t pair(const std::vector<float> &m, size_t low, size_t high) { return pack_bf16(m[low], m[high]); }

static void test_mma(void **) {
    /* small integers: bf16 and the sums represent them exactly, in any order */
    std::vector<float> A(256), B(128), C(128);
    for (float &x : A) x = (float)(int)(uniform() * 16);
    for (float &x : B) x = (float)(int)(uniform() * 16);
    for (float &x : C) x = (float)(int)(uniform() * 100);
    std::vector<uint32_t> a(128), b(64);
    std::vector<float> c(128);
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 8; i += 2)
            a[(size_t)(l * 4 + i / 2)] = pair(A, (size_t)(a_row(l, i) * 16 + a_column(l, i)),
                                              (size_t)(a_row(l, i + 1) * 16 + a_column(l, i + 1)));
        for (int i = 0; i < 4; i += 2)
            b[(size_t)(l * 2 + i / 2)] =
                pair(B, (size_t)(b_row(l, i) * 8 + b_column(l, i)), (size_t)(b_row(l, i + 1) * 8 + b_column(l, i + 1)));
        for (int i = 0; i < 4; i++) c[(size_t)(l * 4 + i)] = C[(size_t)(c_row(l, i) * 8 + c_column(l, i))];
    }
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        Device<uint32_t> da(a), db(b);
        Device<float> dc(c), out(128);
        LAUNCH(mma_kernel, 1, 32, 0, 0, out.p, da.p, db.p, dc.p);
        std::vector<float> d = out.get();
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++) {
                int row = c_row(l, i), column = c_column(l, i);
                double want = C[(size_t)(row * 8 + column)];
                for (int k = 0; k < 16; k++) want += (double)A[(size_t)(row * 16 + k)] * B[(size_t)(k * 8 + column)];
                assert_true(d[(size_t)(l * 4 + i)] == want);
            }
    }
}

template <int TILES, bool TRANS> __global__ void ldmatrix_kernel(uint32_t *out, const uint16_t *x) {
    __shared__ __align__(16) uint16_t tile[32][8];
    for (int i = 0; i < 8; i++) tile[threadIdx.x][i] = x[threadIdx.x * 8 + i];
    __syncwarp();
    uint32_t r[4] = {0, 0, 0, 0}, h[2] = {0, 0};
    const void *row = tile[threadIdx.x];
    if (TILES == 4 && TRANS) ldmatrix_x4_trans(r, row);
    if (TILES == 4 && !TRANS) ldmatrix_x4(r, row);
    if (TILES == 2 && TRANS) ldmatrix_x2_trans(h, row);
    if (TILES == 2 && !TRANS) ldmatrix_x2(h, row);
    for (int i = 0; i < TILES; i++) out[threadIdx.x * 4 + i] = TILES == 4 ? r[i] : h[i];
}
/* PTX ISA, ldmatrix: row r of tile i is at the address of lane 8 i + r; lane l receives from row l / 4 the elements
 * 2 (l % 4) and the next; .trans: from column l / 4. */
template <int TILES, bool TRANS> static void check_ldmatrix(void) {
    std::vector<uint16_t> x(256);
    for (size_t i = 0; i < 256; i++) x[i] = (uint16_t)(i * 257 + 1);
    Device<uint16_t> in(x);
    Device<uint32_t> out(128);
    LAUNCH((ldmatrix_kernel<TILES, TRANS>), 1, 32, 0, 0, out.p, in.p);
    std::vector<uint32_t> r = out.get();
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < TILES; i++)
            for (int e = 0; e < 2; e++) {
                int row = l / 4, column = 2 * (l % 4) + e;
                size_t at = (size_t)(TRANS ? (8 * i + column) * 8 + row : (8 * i + row) * 8 + column);
                assert_int_equal(r[(size_t)(l * 4 + i)] >> 16 * e & 0xffff, x[at]);
            }
}
static void test_ldmatrix(void **) {
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        check_ldmatrix<4, false>();
        check_ldmatrix<4, true>();
        check_ldmatrix<2, false>();
        check_ldmatrix<2, true>();
    }
}

/* D[M,N] = A[M,K] B[N,K]^T with all of the instructions together, two tiles in flight. */
template <int BM, int BN> __global__ void gemm_kernel(float *D, const bf16 *A, const bf16 *B, int M, int N, int K) {
    constexpr int BK = 16, STRIDE = BK + 8;
    __shared__ __align__(16) bf16 a_tile[2][BM][STRIDE];
    __shared__ __align__(16) bf16 b_tile[2][BN][STRIDE];
    const int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32, row0 = (int)blockIdx.y * BM,
              column0 = (int)blockIdx.x * BN;
    float sum[BN / 8][4] = {};
    auto fetch = [&](int k, int buffer) {
        for (int i = thread; i < BM * 2; i += (int)blockDim.x)
            cp_async_16_zfill(&a_tile[buffer][i / 2][i % 2 * 8], A + (size_t)(row0 + i / 2) * K + k + i % 2 * 8,
                              row0 + i / 2 < M);
        for (int i = thread; i < BN * 2; i += (int)blockDim.x)
            cp_async_16_zfill(&b_tile[buffer][i / 2][i % 2 * 8], B + (size_t)(column0 + i / 2) * K + k + i % 2 * 8,
                              column0 + i / 2 < N);
        cp_async_commit();
    };
    fetch(0, 0);
    for (int k = 0, buffer = 0; k < K; k += BK, buffer ^= 1) {
        if (k + BK < K) {
            fetch(k + BK, buffer ^ 1);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
        uint32_t a[4];
        ldmatrix_x4(a, &a_tile[buffer][warp * 16 + lane % 16][lane / 16 * 8]);
        for (int j = 0; j < BN / 8; j++) {
            uint32_t b[2];
            ldmatrix_x2(b, &b_tile[buffer][j * 8 + lane % 8][lane / 8 % 2 * 8]);
            mma_m16n8k16_bf16(sum[j], a, b, sum[j]);
        }
        __syncthreads();
    }
    for (int j = 0; j < BN / 8; j++)
        for (int i = 0; i < 4; i++) {
            int row = row0 + warp * 16 + lane / 4 + i / 2 * 8, column = column0 + j * 8 + lane % 4 * 2 + i % 2;
            if (row < M && column < N) D[(size_t)row * N + column] = sum[j][i];
        }
}
static void test_gemm(void **) {
    const int M = 50, N = 27, K = 80;
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        std::vector<bf16> a = rounded(uniforms((size_t)M * K)), b = rounded(uniforms((size_t)N * K));
        Device<bf16> da(a), db(b);
        Device<float> out((size_t)M * N);
        LAUNCH((gemm_kernel<64, 32>), dim3(1, 1), 128, 0, 0, out.p, da.p, db.p, M, N, K);
        std::vector<float> d = out.get();
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                double want = 0;
                for (int k = 0; k < K; k++)
                    want += (double)(float)a[(size_t)(i * K + k)] * (float)b[(size_t)(j * K + k)];
                assert_true(fabs(d[(size_t)(i * N + j)] - want) < 1e-4);
            }
    }
}

template <typename T> __global__ void wide_kernel(T *out, const T *x) {
    size_t at = threadIdx.x * Wide<T>::N;
    Wide<T> w = wide_load_once(x + at), v = wide_load(x + at), s = wide_fill<T>(1);
    for (int i = 0; i < Wide<T>::N; i++) s.v[i] = (T)((float)s.v[i] + (float)w.v[i] + (float)v.v[i]);
    if (threadIdx.x % 2) wide_store(out + at, s);
    else wide_store_once(out + at, s);
}
static void test_wide(void **) {
    std::vector<float> x(32 * 8);
    for (size_t i = 0; i < x.size(); i++) x[i] = (float)(i % 64);
    Device<bf16> in(rounded(x)), out(x.size());
    LAUNCH((wide_kernel<bf16>), 1, 32, 0, 0, out.p, in.p);
    for (size_t i = 0; i < x.size(); i++) assert_true((float)out.get()[i] == 2 * x[i] + 1);
    Device<float> fin(x), fout(x.size());
    LAUNCH((wide_kernel<float>), 1, 64, 0, 0, fout.p, fin.p);
    for (size_t i = 0; i < x.size(); i++) assert_true(fout.get()[i] == 2 * x[i] + 1);
}

/* Rounds to nearest, ties to even, with integers alone. The toolkit's bf16 and the twin's are both checked against
 * it. */
static void test_bf16(void **) {
    for (uint64_t u = 0; u < 0x100000000ull; u += 4093) {
        uint32_t bits = (uint32_t)u;
        float x = __uint_as_float(bits);
        uint32_t low = bits & 0xffff, high = bits >> 16, got = __bfloat16_as_ushort(__float2bfloat16_rn(x));
        if (low > 0x8000 || (low == 0x8000 && high % 2)) high++;
        if (x != x) assert_int_equal(got, 0x7fff);
        else assert_int_equal(got, high);
    }
    for (uint32_t h = 0; h < 0x10000; h++)
        assert_int_equal(__float_as_uint(__bfloat162float(__ushort_as_bfloat16((unsigned short)h))), h << 16);
    uint32_t two = pack_bf16(1.5f, -2.25f);
    assert_true(unpack_bf16_low(two) == 1.5f && unpack_bf16_high(two) == -2.25f);
    assert_true((float)(__float2bfloat16(1.5f) + __float2bfloat16(0.25f)) == 1.75f);
    float2 v = __bfloat1622float2(__floats2bfloat162_rn(3, 4));
    assert_true(v.x == 3 && v.y == 4);
}

/* ==== Streams, events, graphs, limits ==== */

__global__ void scale_kernel(float *x, float by, float plus) { x[threadIdx.x] = x[threadIdx.x] * by + plus; }

/* Two streams: the second needs the first's result. Returns the value that the reader gets. */
static float two_streams(bool event, bool wait) {
    cudaStream_t first, second;
    cudaEvent_t done;
    float *host, result;
    cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
    cudaMallocHost((void **)&host, sizeof(float));
    *host = -1;
    {
        Device<float> x(std::vector<float>(1, 1.0f));
        LAUNCH(scale_kernel, 1, 1, 0, first, x.p, 10.0f, 0.0f);
        cudaEventRecord(done, first);
        if (event) cudaStreamWaitEvent(second, done, 0);
        LAUNCH(scale_kernel, 1, 1, 0, second, x.p, 1.0f, 5.0f);
        cudaMemcpyAsync(host, x.p, sizeof(float), cudaMemcpyDeviceToHost, second);
        if (wait) cudaStreamSynchronize(second);
        result = *host;
    }
    cudaEventDestroy(done), cudaStreamDestroy(first), cudaStreamDestroy(second), cudaFreeHost(host);
    return result;
}
static void test_streams(void **) {
    int unordered = 0, early = 0;
    for (int seed = 0; seed < 2 * SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        assert_true(two_streams(true, true) == 15);
        unordered += two_streams(false, true) != 15;
        early += two_streams(true, false) != 15;
    }
    /* the missing event and the missing wait were noticed under several seeds */
    assert_true(unordered > 2);
    assert_true(early > 2);
}

static void test_pageable(void **) {
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        cudaStream_t stream;
        cudaStreamCreate(&stream);
        Device<float> x(1);
        float in = 3, out = 0;
        cudaMemcpyAsync(x.p, &in, sizeof(in), cudaMemcpyHostToDevice, stream);
        in = 4; /* the copy was made at the call */
        cudaMemcpyAsync(&out, x.p, sizeof(out), cudaMemcpyDeviceToHost, stream);
        assert_true(out == 3);
        cudaStreamDestroy(stream);
    }
}

static void test_graphs(void **) {
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        cudaStream_t stream;
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        cudaStreamCaptureStatus status;
        void *no_memory;
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        Device<float> x(std::vector<float>(1, 1.0f));
        assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
        cudaStreamIsCapturing(stream, &status);
        assert_int_equal(status, cudaStreamCaptureStatusActive);
        LAUNCH(scale_kernel, 1, 1, 0, stream, x.p, 2.0f, 0.0f);
        LAUNCH(scale_kernel, 1, 1, 0, stream, x.p, 1.0f, 1.0f);
        /* calls that would have to wait or to allocate are refused during capture */
        assert_int_equal(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
        assert_int_equal(cudaMalloc(&no_memory, 8), cudaErrorStreamCaptureUnsupported);
        assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
        (void)cudaGetLastError();
        assert_true(x.get()[0] == 1); /* nothing has run */
        assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
        for (int i = 0; i < 3; i++) cudaGraphLaunch(exec, stream);
        cudaStreamSynchronize(stream);
        assert_true(x.get()[0] == 15);
        cudaGraphExecDestroy(exec), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
    }
}

static void test_limits(void **) {
    cuda_host_seed(0);
    Device<float> x(1);
    LAUNCH(scale_kernel, 0, 1, 0, 0, x.p, 1.0f, 1.0f);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    LAUNCH(scale_kernel, 1, 1025, 0, 0, x.p, 1.0f, 1.0f);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    LAUNCH(scale_kernel, dim3(1, 70000), 1, 0, 0, x.p, 1.0f, 1.0f);
    assert_int_equal(cudaPeekAtLastError(), cudaErrorInvalidConfiguration);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    LAUNCH(scale_kernel, 1, 1, 64 << 10, 0, x.p, 1.0f, 1.0f);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaFuncSetAttribute(scale_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10),
                     cudaSuccess);
    LAUNCH(scale_kernel, 1, 1, 64 << 10, 0, x.p, 1.0f, 1.0f);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaFuncSetAttribute(scale_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 300 << 10),
                     cudaErrorInvalidValue);
    (void)cudaGetLastError();

    size_t available, total, now;
    void *p;
    setenv("CUDA_HOST_MEMORY", "1000000", 1);
    cudaMemGetInfo(&available, &total);
    assert_int_equal(total, 1000000);
    assert_int_equal(cudaMalloc(&p, 1000001), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaMalloc(&p, 500000), cudaSuccess);
    cudaMemGetInfo(&now, &total);
    assert_int_equal(available - now, 500000);
    cudaFree(p);
    unsetenv("CUDA_HOST_MEMORY");
}

/* ==== Planted faults ==== */

__global__ void missing_barrier_kernel(float *out, const float *in) {
    __shared__ float tile[64];
    tile[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = tile[63 - threadIdx.x];
}
/* Writes the next tile while others may still read this one. */
__global__ void missing_second_barrier_kernel(float *out, const float *in) {
    __shared__ float tile[64];
    float sum = 0;
    for (int i = 0; i < 2; i++) {
        tile[threadIdx.x] = in[threadIdx.x] + (float)i;
        __syncthreads();
        sum += tile[63 - threadIdx.x];
    }
    out[threadIdx.x] = sum;
}
__global__ void missing_syncwarp_kernel(float *out, const float *in) {
    __shared__ float tile[32];
    tile[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = tile[threadIdx.x ^ 1];
}
__global__ void between_blocks_kernel(float *out) { out[threadIdx.x] += 1; }
__global__ void plain_counter_kernel(float *out) { out[0] += 1; }
__global__ void shared_overrun_kernel(float *out, int n) {
    __shared__ float tile[32];
    float *volatile to = tile; /* hides the address from the compiler */
    for (int i = 0; i < n; i++) to[i] = 1;
    out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void dynamic_overrun_kernel(float *out) {
    SHARED_DYNAMIC(float, tile);
    tile[threadIdx.x] = 1;
    out[0] = tile[0];
}
__global__ void global_overrun_kernel(float *out) { out[blockIdx.x * blockDim.x + threadIdx.x] = 1; }
__global__ void uninitialised_kernel(float *out, const float *in) {
    __shared__ float tile[64];
    if (threadIdx.x < 60) tile[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    float most = 0;
    for (int i = 0; i < 64; i++) most = fmaxf(most, tile[i]); /* skips NaN: a single pattern would miss the fault */
    out[threadIdx.x] = most;
}
__global__ void divergent_barrier_kernel(float *out) {
    if (threadIdx.x < 32) __syncthreads();
    else {
        out[threadIdx.x] = 1;
        __syncthreads();
    }
}
__global__ void early_return_kernel(float *out, unsigned n) {
    if (threadIdx.x >= n) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
__global__ void missing_arrival_kernel(float *out) {
    if (threadIdx.x < 32) __syncthreads();
    else __syncwarp();
    out[threadIdx.x] = 1;
}
__global__ void shuffle_lanes_kernel(float *out) {
    float v = (float)threadIdx.x;
    if (threadIdx.x % 2) v = __shfl_xor_sync(0xffffffffu, v, 1);
    out[threadIdx.x] = v;
}
__global__ void shuffle_mask_kernel(float *out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, (float)threadIdx.x, 20);
}
__global__ void shuffle_exited_kernel(float *out, unsigned n) {
    if (threadIdx.x >= n) return;
    out[threadIdx.x] = __shfl_down_sync(0xffffffffu, (float)threadIdx.x, 1);
}
template <bool WAIT, bool ALL> __global__ void copy_kernel(float *out, const float *in) {
    __shared__ __align__(16) float tile[128];
    cp_async_16(&tile[threadIdx.x * 4], in + threadIdx.x * 4);
    cp_async_commit();
    cp_async_16(&tile[64 + threadIdx.x * 4], in + 64 + threadIdx.x * 4);
    cp_async_commit();
    if (WAIT) cp_async_wait<ALL ? 0 : 1>();
    __syncthreads();
    for (int i = 0; i < 8; i++) out[threadIdx.x * 8 + i] = tile[127 - threadIdx.x * 8 - i];
    cp_async_wait<0>();
}
__global__ void misaligned_load_kernel(float *out, const float *in) { out[0] = wide_load(in + 1).v[0]; }
__global__ void misaligned_copy_kernel(const bf16 *in) {
    __shared__ __align__(16) bf16 tile[32];
    cp_async_16(tile + 1, in);
    cp_async_commit();
    cp_async_wait<0>();
}
__global__ void misaligned_ldmatrix_kernel(uint32_t *out) {
    __shared__ __align__(16) uint16_t tile[32 * 9];
    for (int i = 0; i < 9; i++) tile[threadIdx.x * 9 + i] = 0;
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, &tile[threadIdx.x * 9]);
    out[threadIdx.x] = r[0];
}
__global__ void partial_mma_kernel(float *out) {
    uint32_t a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
    float c[4] = {0, 0, 0, 0};
    if (threadIdx.x < 31) mma_m16n8k16_bf16(c, a, b, c);
    out[threadIdx.x] = c[0];
}

/* The exit status and output of a child that runs `program`. */
struct Ending {
    int status;
    std::string words;
};
static Ending run(const std::function<void()> &program) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]), close(ends[1]);
        program();
        cuda_host_drain();
        exit(0); /* exit() prints the race detector's report */
    }
    close(ends[1]);
    Ending e;
    char buffer[4096];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) e.words.append(buffer, (size_t)n);
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    e.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return e;
}
/* The address sanitizer exits with status 1. */
enum { FOUND = 99, RACE = 98, SANITIZER = 1 };
static void expect(const Ending &e, int status, const char *words) {
    if (e.status != status || e.words.find(words) == std::string::npos)
        fail_msg("status %d, expected %d with \"%s\": %s", e.status, status, words, e.words.c_str());
}
/* Faults found by the machine itself, under every seed. */
static void always(const char *words, const std::function<void()> &program) {
    for (uint64_t seed = 0; seed < 3; seed++)
        expect(run([&] {
                   cuda_host_seed(seed);
                   program();
               }),
               FOUND, words);
}

static void test_found_always(void **) {
    always("divergent barrier", [] {
        Device<float> x(64);
        LAUNCH(divergent_barrier_kernel, 1, 64, 0, 0, x.p);
    });
    always("return", [] {
        Device<float> x(64);
        LAUNCH(early_return_kernel, 1, 64, 0, 0, x.p, 50u);
    });
    always("at the barrier", [] {
        Device<float> x(64);
        LAUNCH(missing_arrival_kernel, 1, 64, 0, 0, x.p);
    });
}

static void test_found_warp(void **) {
    always("shuffle_lanes_kernel", [] {
        Device<float> x(32);
        LAUNCH(shuffle_lanes_kernel, 1, 32, 0, 0, x.p);
    });
    always("reads lane 20, which does not take part", [] {
        Device<float> x(32);
        LAUNCH(shuffle_mask_kernel, 1, 32, 0, 0, x.p);
    });
    always("return", [] {
        Device<float> x(32);
        LAUNCH(shuffle_exited_kernel, 1, 32, 0, 0, x.p, 20u);
    });
    always("lanes that the warp lacks", [] {
        Device<float> x(32);
        LAUNCH(shuffle_exited_kernel, 1, 24, 0, 0, x.p, 24u);
    });
    always("partial_mma_kernel", [] {
        Device<float> x(32);
        LAUNCH(partial_mma_kernel, 1, 32, 0, 0, x.p);
    });
}

static void test_found_alignment(void **) {
    always("is not a multiple of 16", [] {
        Device<float> in(8), out(1);
        LAUNCH(misaligned_load_kernel, 1, 1, 0, 0, out.p, in.p);
    });
    always("is not a multiple of 16", [] {
        Device<bf16> in(8);
        LAUNCH(misaligned_copy_kernel, 1, 1, 0, 0, in.p);
    });
    always("is not a multiple of 16", [] {
        Device<uint32_t> out(32);
        LAUNCH(misaligned_ldmatrix_kernel, 1, 32, 0, 0, out.p);
    });
}

static void test_found_api(void **) {
    always("are not within one allocation", [] {
        Device<float> x(4);
        cudaMemset(x.p + 2, 0, 3 * sizeof(float));
    });
    always("are not within one allocation", [] {
        float a[4] = {0}, b[4] = {0};
        cudaMemcpy(a, b, sizeof(a), cudaMemcpyHostToDevice);
    });
    always("is device memory", [] {
        Device<float> x(4), y(4);
        cudaMemcpy(x.p, y.p, 16, cudaMemcpyHostToDevice);
    });
    always("was not allocated by cudaMalloc", [] {
        Device<float> x(4);
        cudaFree(x.p + 1);
    });
}

/* Faults that only show as wrong values under some seed. The race detector reports both places. */
static int wrong_results(void (*kernel)(float *, const float *), size_t n, const std::vector<float> &want) {
    int wrong = 0;
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        std::vector<float> x(n);
        for (size_t i = 0; i < n; i++) x[i] = (float)i;
        Device<float> in(x), out(n);
        LAUNCH(kernel, 1, (unsigned)n, 0, 0, out.p, in.p);
        std::vector<float> y = out.get();
        wrong += memcmp(y.data(), want.data(), n * sizeof(float)) != 0;
    }
    return wrong;
}
static void test_found_by_order(void **) {
    std::vector<float> reversed(64), twice(64), neighbour(32);
    for (size_t i = 0; i < 64; i++) {
        reversed[i] = (float)(63 - i);
        twice[i] = 2 * (float)(63 - i) + 1;
    }
    for (size_t i = 0; i < 32; i++) neighbour[i] = (float)(i ^ 1);
    if (cuda_host_race_detector()) {
        expect(run([&] { wrong_results(missing_barrier_kernel, 64, reversed); }), RACE, "tile + ");
        expect(run([&] { wrong_results(missing_second_barrier_kernel, 64, twice); }), RACE,
               "write after read at missing_second");
        expect(run([&] { wrong_results(missing_syncwarp_kernel, 32, neighbour); }), RACE, "nothing orders them");
        return;
    }
    assert_true(wrong_results(missing_barrier_kernel, 64, reversed) >= SEEDS - 1);
    assert_true(wrong_results(missing_second_barrier_kernel, 64, twice) >= SEEDS / 2);
    assert_true(wrong_results(missing_syncwarp_kernel, 32, neighbour) >= SEEDS - 1);
}

static void test_found_between_blocks(void **) {
    if (!cuda_host_race_detector()) return;
    expect(run([] {
               Device<float> x(32);
               LAUNCH(between_blocks_kernel, 4, 32, 0, 0, x.p);
           }),
           RACE, "device memory + 0");
    expect(run([] {
               Device<float> x(1);
               LAUNCH(plain_counter_kernel, 1, 64, 0, 0, x.p);
           }),
           RACE, "device memory + 0");
    expect(run([] {
               Device<float> x(std::vector<float>(320, 0.5f)), part(10), out(1);
               Device<unsigned> count(std::vector<unsigned>(1, 0));
               LAUNCH((last_block_kernel<false>), 10, 32, 0, 0, out.p, part.p, count.p, x.p);
           }),
           RACE, "last_block_kernel");
    /* launches on one stream are ordered */
    expect(run([] {
               Device<float> x(std::vector<float>(32, 0.0f));
               LAUNCH(between_blocks_kernel, 1, 32, 0, 0, x.p);
               LAUNCH(between_blocks_kernel, 1, 32, 0, 0, x.p);
           }),
           0, "");
}

static void test_found_copies(void **) {
    auto program = [](void (*kernel)(float *, const float *), int *wrong) {
        for (int seed = 0; seed < SEEDS; seed++) {
            cuda_host_seed((uint64_t)seed);
            std::vector<float> x(128);
            for (size_t i = 0; i < 128; i++) x[i] = (float)i;
            Device<float> in(x), out(128);
            LAUNCH(kernel, 1, 16, 0, 0, out.p, in.p);
            std::vector<float> y = out.get();
            bool right = true;
            for (size_t i = 0; i < 128; i++) right = right && y[i] == (float)(127 - i);
            *wrong += !right;
        }
    };
    int wrong = 0;
    program(copy_kernel<true, true>, &wrong);
    assert_int_equal(wrong, 0);
    if (cuda_host_race_detector()) {
        expect(run([&] { program(copy_kernel<false, false>, &wrong); }), RACE, "copy_kernel");
        expect(run([&] { program(copy_kernel<true, false>, &wrong); }), RACE, "copy_kernel");
        return;
    }
    program(copy_kernel<false, false>, &wrong);
    assert_int_equal(wrong, SEEDS);
    program(copy_kernel<true, false>, &wrong);
    assert_int_equal(wrong, 2 * SEEDS);
}

static void test_found_overruns(void **) {
    if (!ASAN) return;
    expect(run([] {
               Device<float> x(32);
               LAUNCH(shared_overrun_kernel, 1, 1, 0, 0, x.p, 33);
           }),
           SANITIZER, "global-buffer-overflow");
    expect(run([] {
               Device<float> x(32);
               LAUNCH(dynamic_overrun_kernel, 1, 9, 32, 0, x.p);
           }),
           SANITIZER, "poison");
    expect(run([] {
               Device<float> x(100);
               LAUNCH(global_overrun_kernel, 4, 32, 0, 0, x.p);
           }),
           SANITIZER, "poison");
    expect(run([] {
               Device<float> x(128);
               LAUNCH(global_overrun_kernel, 5, 32, 0, 0, x.p);
           }),
           SANITIZER, "heap-buffer-overflow");
    expect(run([] {
               float *gone;
               cudaMalloc((void **)&gone, 128);
               cudaFree(gone);
               LAUNCH(global_overrun_kernel, 1, 32, 0, 0, gone);
           }),
           SANITIZER, "heap-use-after-free");
}

static void test_poison(void **) {
    std::vector<float> x(64, 0.5f);
    int patterns_seen = 0, wrong = 0;
    bool seen[256] = {false};
    for (int seed = 0; seed < SEEDS; seed++) {
        cuda_host_seed((uint64_t)seed);
        Device<unsigned char> fresh(100);
        std::vector<unsigned char> bytes = fresh.get();
        for (unsigned char b : bytes) assert_int_equal(b, bytes[0]);
        if (!seen[bytes[0]]) {
            seen[bytes[0]] = true;
            patterns_seen++;
        }
        Device<float> in(x), out(64);
        LAUNCH(uninitialised_kernel, 1, 64, 0, 0, out.p, in.p);
        wrong += out.get()[0] != 0.5f;
    }
    assert_int_equal(patterns_seen, 4);
    assert_in_range(wrong, 1, SEEDS - 1);
}

/* ==== cuBLASLt ==== */

struct Problem {
    int m, n, k;
    bool transpose_a, transpose_b;
    int epilogue;
    float alpha, beta;
};
static double gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
static double gelu_slope(double x) { /* from the definition of the derivative */
    return (gelu(x + 1e-6) - gelu(x - 1e-6)) / 2e-6;
}
template <typename T, typename O>
static cublasStatus_t multiply(const Problem &p, O *out, const T *a, const T *b, O *bias, O *aux) {
    const cudaDataType_t in = sizeof(T) == 4 ? CUDA_R_32F : CUDA_R_16BF, to = sizeof(O) == 4 ? CUDA_R_32F : CUDA_R_16BF;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t A, B, D;
    cublasLtMatmulPreference_t want;
    cublasLtMatmulHeuristicResult_t result;
    cublasOperation_t ta = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, tb = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)p.epilogue;
    uint64_t workspace_bytes = 1 << 16;
    uint32_t alignment = 16;
    int64_t ld = (p.m + 7) / 8 * 8;
    int found;
    Device<char> workspace((size_t)workspace_bytes);
    cublasLtCreate(&handle);
    cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof(ta));
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof(tb));
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue));
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias));
    if (epilogue & 128) {
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &aux, sizeof(aux));
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ld, sizeof(ld));
    }
    uint64_t a_rows = (uint64_t)(p.transpose_a ? p.k : p.m), b_rows = (uint64_t)(p.transpose_b ? p.n : p.k);
    cublasLtMatrixLayoutCreate(&A, in, a_rows, (uint64_t)(p.transpose_a ? p.m : p.k), (int64_t)a_rows);
    cublasLtMatrixLayoutCreate(&B, in, b_rows, (uint64_t)(p.transpose_b ? p.k : p.n), (int64_t)b_rows);
    cublasLtMatrixLayoutCreate(&D, to, (uint64_t)p.m, (uint64_t)p.n, ld);
    cublasLtMatmulPreferenceCreate(&want);
    cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                         sizeof(workspace_bytes));
    cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (cublasLtMatmulPreferenceAttributes_t which : alignments)
        cublasLtMatmulPreferenceSetAttribute(want, which, &alignment, sizeof(alignment));
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, desc, A, B, D, D, want, 1, &result, &found);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmul(handle, desc, &p.alpha, a, A, b, B, &p.beta, out, D, out, D, &result.algo, workspace.p,
                                workspace_bytes, 0);
    cudaDeviceSynchronize();
    cublasLtMatmulPreferenceDestroy(want), cublasLtMatrixLayoutDestroy(A), cublasLtMatrixLayoutDestroy(B);
    cublasLtMatrixLayoutDestroy(D), cublasLtMatmulDescDestroy(desc), cublasLtDestroy(handle);
    return status;
}
template <typename O> static O as(float x);
template <> float as<float>(float x) { return x; }
template <> bf16 as<bf16>(float x) { return __float2bfloat16(x); }

template <typename T, typename O> static void check_product(const Problem &p) {
    size_t ld = (size_t)(p.m + 7) / 8 * 8;
    std::vector<float> af = uniforms((size_t)(p.m * p.k)), bf = uniforms((size_t)(p.k * p.n)),
                       cf = uniforms(ld * (size_t)p.n);
    std::vector<T> a(af.size()), b(bf.size());
    std::vector<O> c(cf.size()), bias(64), aux(cf.size());
    for (size_t i = 0; i < a.size(); i++) a[i] = as<T>(af[i]);
    for (size_t i = 0; i < b.size(); i++) b[i] = as<T>(bf[i]);
    for (size_t i = 0; i < c.size(); i++) {
        c[i] = as<O>(cf[i]);
        aux[i] = as<O>(uniform() * 2);
    }
    for (O &x : bias) x = as<O>(uniform());
    Device<T> da(a), db(b);
    Device<O> out(c), dbias(bias), daux(aux);
    assert_int_equal((multiply<T, O>(p, out.p, da.p, db.p, dbias.p, daux.p)), CUBLAS_STATUS_SUCCESS);
    std::vector<O> d = out.get(), kept = daux.get(), bias_after = dbias.get();
    double tolerance = sizeof(O) == 4 ? 1e-4 : 0.03;
    auto A = [&](int i, int l) { return (double)(float)a[(size_t)(p.transpose_a ? l + i * p.k : i + l * p.m)]; };
    auto B = [&](int l, int j) { return (double)(float)b[(size_t)(p.transpose_b ? j + l * p.n : l + j * p.k)]; };
    std::vector<double> column_gradient((size_t)p.m);
    for (int j = 0; j < p.n; j++)
        for (int i = 0; i < p.m; i++) {
            size_t at = (size_t)i + (size_t)j * ld;
            double x = 0;
            for (int l = 0; l < p.k; l++) x += A(i, l) * B(l, j);
            x = p.alpha * x + p.beta * (double)(float)c[at];
            if (p.epilogue & CUBLASLT_EPILOGUE_BIAS) x += (float)bias[(size_t)i];
            if ((p.epilogue & CUBLASLT_EPILOGUE_GELU_AUX) == CUBLASLT_EPILOGUE_GELU_AUX)
                assert_true(fabs((float)kept[at] - x) < tolerance);
            if (p.epilogue & 32) x = gelu(x);
            if (p.epilogue & 64) x *= gelu_slope((float)aux[at]);
            column_gradient[(size_t)i] += x;
            assert_true(fabs((float)d[at] - x) < tolerance);
        }
    if (p.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD)
        for (size_t i = 0; i < (size_t)p.m; i++)
            assert_true(fabs((float)bias_after[i] - column_gradient[i]) < 3 * tolerance);
    if (p.epilogue == CUBLASLT_EPILOGUE_BGRADA) {
        for (int i = 0; i < p.m; i++) {
            double sum = 0;
            for (int l = 0; l < p.k; l++) sum += A(i, l);
            assert_true(fabs((float)bias_after[(size_t)i] - sum) < 3 * tolerance);
        }
    }
    if (p.epilogue == CUBLASLT_EPILOGUE_BGRADB) {
        for (int j = 0; j < p.n; j++) {
            double sum = 0;
            for (int l = 0; l < p.k; l++) sum += B(l, j);
            assert_true(fabs((float)bias_after[(size_t)j] - sum) < 3 * tolerance);
        }
    }
}
static void test_cublaslt(void **) {
    static const int epilogues[] = {CUBLASLT_EPILOGUE_DEFAULT,   CUBLASLT_EPILOGUE_BIAS,
                                    CUBLASLT_EPILOGUE_GELU,      CUBLASLT_EPILOGUE_GELU_AUX,
                                    CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
                                    CUBLASLT_EPILOGUE_DGELU,     CUBLASLT_EPILOGUE_DGELU_BGRAD,
                                    CUBLASLT_EPILOGUE_BGRADA,    CUBLASLT_EPILOGUE_BGRADB};
    cuda_host_seed(1);
    for (int epilogue : epilogues)
        for (int transposed = 0; transposed < 4; transposed++) {
            Problem p = {13, 9, 21, transposed / 2 == 1, transposed % 2 == 1, epilogue, 0.5f, 0.0f};
            check_product<float, float>(p);
            check_product<bf16, bf16>(p);
            check_product<bf16, float>(p);
            p.beta = 1;
            check_product<float, float>(p);
            check_product<bf16, float>(p);
        }
    /* with CUDA_HOST_NO_EPILOGUE no epilogue has an algorithm; a plain product still works */
    setenv("CUDA_HOST_NO_EPILOGUE", "1", 1);
    Device<float> a(16), b(16), out(32), bias(8);
    Problem p = {4, 4, 4, false, false, CUBLASLT_EPILOGUE_BIAS, 1, 0};
    assert_int_equal((multiply<float, float>(p, out.p, a.p, b.p, bias.p, out.p)), CUBLAS_STATUS_NOT_SUPPORTED);
    p.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    assert_int_equal((multiply<float, float>(p, out.p, a.p, b.p, bias.p, out.p)), CUBLAS_STATUS_SUCCESS);
    unsetenv("CUDA_HOST_NO_EPILOGUE");
    /* a product of zeros is zero */
    cudaMemset(a.p, 0, 64);
    cudaMemset(b.p, 0, 64);
    assert_int_equal((multiply<float, float>(p, out.p, a.p, b.p, bias.p, out.p)), CUBLAS_STATUS_SUCCESS);
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 4; i++) assert_true(out.get()[(size_t)(i + 8 * j)] == 0);
    always("cublasLtMatmul: D", [] {
        Device<float> a(16), b(16), out(16), bias(8); /* the leading dimension is 8: 28 elements are needed */
        Problem p = {4, 4, 4, false, false, CUBLASLT_EPILOGUE_DEFAULT, 1, 0};
        multiply<float, float>(p, out.p, a.p, b.p, bias.p, out.p);
    });
    always("is less aligned", [] {
        Device<float> a(17), b(16), out(32), bias(8);
        Problem p = {4, 4, 4, false, false, CUBLASLT_EPILOGUE_DEFAULT, 1, 0};
        multiply<float, float>(p, out.p, a.p + 1, b.p, bias.p, out.p);
    });
}

/* ==== NCCL ==== */

/* Runs `program` in `ranks` processes. Returns 0 if all of them succeed. */
static int run_ranks(int ranks, const std::function<int(ncclComm_t, int)> &program, std::string *words) {
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    int failures = 0, ends[2];
    assert_int_equal(pipe(ends), 0);
    for (int r = 0; r < ranks; r++)
        if (fork() == 0) {
            dup2(ends[1], 2);
            close(ends[0]), close(ends[1]);
            ncclComm_t comm;
            if (ncclCommInitRank(&comm, ranks, id, r) != ncclSuccess) _exit(3);
            int status = program(comm, r);
            ncclCommDestroy(comm);
            _exit(status);
        }
    close(ends[1]);
    char buffer[4096];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;)
        if (words) words->append(buffer, (size_t)n);
    close(ends[0]);
    for (int r = 0; r < ranks; r++) {
        int status;
        wait(&status);
        failures += !WIFEXITED(status) || WEXITSTATUS(status);
    }
    return failures;
}
#define NEED(condition)                                                                                                \
    if (!(condition)) {                                                                                                \
        fprintf(stderr, "line %d\n", __LINE__);                                                                        \
        return 1;                                                                                                      \
    }
enum { LONG = 150000 }; /* floats: more than one chunk */

static int collectives(ncclComm_t comm, int rank) {
    int ranks;
    ncclCommCount(comm, &ranks);
    cuda_host_seed((uint64_t)rank); /* each rank's streams run in a different order */
    cudaStream_t stream, other;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
    std::vector<float> x(LONG);
    for (size_t i = 0; i < LONG; i++) x[i] = (float)((i + 1) % 100 * (size_t)(rank + 1));
    Device<float> in(x), sum(LONG), all((size_t)ranks * LONG), part(LONG), most(LONG),
        one(std::vector<float>(3, (float)rank));
    Device<bf16> half(std::vector<bf16>(5, __float2bfloat16((float)(rank + 1))));
    Device<int64_t> count(std::vector<int64_t>(1, rank + 10));
    const float total = (float)(ranks * (ranks + 1) / 2);
    ncclAllReduce(in.p, sum.p, LONG, ncclFloat32, ncclSum, comm, stream);
    ncclAllGather(in.p, all.p, LONG, ncclFloat32, comm, other); /* on another stream: ordered by the calls */
    ncclAllReduce(in.p, most.p, LONG, ncclFloat32, ncclMax, comm, stream);
    ncclGroupStart();
    ncclAllReduce(half.p, half.p, 5, ncclBfloat16, ncclAvg, comm, stream);
    ncclAllReduce(count.p, count.p, 1, ncclInt64, ncclMin, comm, stream);
    ncclBroadcast(one.p, one.p, 3, ncclFloat32, ranks - 1, comm, stream);
    ncclGroupEnd();
    cudaStreamSynchronize(stream);
    cudaStreamSynchronize(other);
    ncclReduceScatter(all.p, part.p, LONG, ncclFloat32, ncclSum, comm, stream);
    cudaStreamSynchronize(stream);
    std::vector<float> s = sum.get(), a = all.get(), p = part.get(), m = most.get();
    for (size_t i = 0; i < LONG; i++) {
        float unit = (float)((i + 1) % 100);
        NEED(s[i] == unit * total && m[i] == unit * (float)ranks);
        for (int r = 0; r < ranks; r++) NEED(a[(size_t)r * LONG + i] == unit * (float)(r + 1));
        NEED(p[i] == unit * (float)(rank + 1) * (float)ranks); /* every rank contributed the same */
    }
    NEED((float)half.get()[0] == total / (float)ranks && count.get()[0] == 10 && one.get()[2] == (float)(ranks - 1));
    /* a ring; messages are longer than a mailbox */
    ncclGroupStart();
    ncclSend(in.p, LONG, ncclFloat32, (rank + 1) % ranks, comm, stream);
    ncclRecv(sum.p, LONG, ncclFloat32, (rank + ranks - 1) % ranks, comm, stream);
    ncclGroupEnd();
    cudaStreamSynchronize(stream);
    s = sum.get();
    float left = (float)((rank + ranks - 1) % ranks + 1);
    for (size_t i = 0; i < LONG; i++) NEED(s[i] == (float)((i + 1) % 100) * left);
    cudaStreamDestroy(stream), cudaStreamDestroy(other);
    return 0;
}
static void test_nccl(void **) {
    std::string words;
    for (int ranks = 1; ranks <= 4; ranks++)
        if (run_ranks(ranks, collectives, &words)) fail_msg("%d ranks: %s", ranks, words.c_str());
}
static void test_nccl_mismatch(void **) {
    std::string words;
    assert_int_not_equal(run_ranks(
                             2,
                             [](ncclComm_t comm, int rank) {
                                 Device<float> x(std::vector<float>(10, 1.0f));
                                 ncclAllReduce(x.p, x.p, rank ? 10 : 9, ncclFloat32, ncclSum, comm, 0);
                                 cudaDeviceSynchronize();
                                 return 0;
                             },
                             &words),
                         0);
    assert_non_null(strstr(words.c_str(), "ncclAllReduce of 9 elements"));
}
/* One rank never calls: the other one sees that nothing is done, and can abort. */
static void test_nccl_abort(void **) {
    std::string words;
    assert_int_equal(run_ranks(
                         2,
                         [](ncclComm_t comm, int rank) {
                             Device<float> x(std::vector<float>(10, 1.0f));
                             cudaEvent_t done;
                             ncclResult_t e;
                             cudaEventCreate(&done);
                             if (rank == 0) {
                                 ncclAllReduce(x.p, x.p, 10, ncclFloat32, ncclSum, comm, 0);
                                 cudaEventRecord(done, 0);
                                 for (int i = 0; i < 100; i++) NEED(cudaEventQuery(done) == cudaErrorNotReady);
                                 NEED(ncclCommAbort(comm) == ncclSuccess);
                                 NEED(cudaEventSynchronize(done) == cudaSuccess);
                                 NEED(ncclCommGetAsyncError(comm, &e) == ncclSuccess && e == ncclRemoteError);
                             }
                             cudaEventDestroy(done);
                             return 0;
                         },
                         &words),
                     0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_indices),
        cmocka_unit_test(test_block_sum),
        cmocka_unit_test(test_warp),
        cmocka_unit_test(test_votes),
        cmocka_unit_test(test_atomics),
        cmocka_unit_test(test_last_block),
        cmocka_unit_test(test_mma),
        cmocka_unit_test(test_ldmatrix),
        cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_wide),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_pageable),
        cmocka_unit_test(test_graphs),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_found_always),
        cmocka_unit_test(test_found_warp),
        cmocka_unit_test(test_found_alignment),
        cmocka_unit_test(test_found_api),
        cmocka_unit_test(test_found_by_order),
        cmocka_unit_test(test_found_between_blocks),
        cmocka_unit_test(test_found_copies),
        cmocka_unit_test(test_found_overruns),
        cmocka_unit_test(test_poison),
        cmocka_unit_test(test_cublaslt),
        cmocka_unit_test(test_nccl),
        cmocka_unit_test(test_nccl_mismatch),
        cmocka_unit_test(test_nccl_abort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
