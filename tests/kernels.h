/* kernels.h - fixtures for tests of CUDA kernels: a device, memory in either storage type, comparison.
 *
 * A test is one C++ file. On any machine g++ compiles it with tests/cuda_host, and it runs on the processor with
 * several seeds, each of which gives another order of threads and blocks and other garbage in new memory. nvcc compiles
 * the same file for a GPU. References are loops over double, written from the formula. Their operands are exact in the
 * storage type. They record the sum of the absolute values of their terms, and a tolerance is a fraction of that
 * sum. */
#ifndef TESTS_KERNELS_H
#define TESTS_KERNELS_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <vector>
extern "C" {
#include <cmocka.h>
}

#include "../llmc/base/random.h"   /* Random, random_normal */
#include "../llmc/cuda/common.cuh" /* bf16, cuda_scratch_begin */
#include "../llmc/cuda/matmul.cuh" /* LT_WORKSPACE_BYTES, MatmulPlan, matmul_plans_clear */
#include "../llmc/model/backend.h" /* Device */

typedef std::vector<float> Numbers;
typedef std::vector<double> Doubles;
typedef std::vector<int32_t> Indices;

/* ---- device ---------------------------------------------------------------------------------------------------- */

static Device *D;
static std::vector<void *> held; /* device memory, freed after each test */

static inline void must(cudaError_t status) {
    if (status != cudaSuccess) fail_msg("%s", cudaGetErrorString(status));
}

static inline int kernels_open(void **) {
    cudaDeviceProp p;
    D = new Device();
    must(cudaGetDeviceProperties(&p, 0));
    D->processors = p.multiProcessorCount;
    D->major = p.major;
    D->minor = p.minor;
    D->shared_limit = p.sharedMemPerBlockOptin;
    D->lt_workspace_bytes = LT_WORKSPACE_BYTES;
    must(cudaStreamCreate(&D->stream));
    must(cudaMalloc(&D->lt_workspace, D->lt_workspace_bytes));
    if (cublasLtCreate(&D->lt) != CUBLAS_STATUS_SUCCESS) fail_msg("cublasLtCreate");
    D->plans = new MatmulPlan();
    return 0;
}

static inline void device_wait() {
    must(cudaStreamSynchronize(D->stream));
    if (D->failed) fail_msg("%s", D->error.text);
}

/* After each test: checks that there is no error and that all memory was freed. */
static inline int kernels_clear(void **) {
    device_wait();
    cuda_scratch_begin(D);
    for (void *p : held) must(cudaFree(p));
    held.clear();
    return 0;
}

static inline int kernels_close(void **) {
    if (D->scratch.block) must(cudaFreeAsync(D->scratch.block, D->stream));
    matmul_plans_clear(D);
    cublasLtDestroy(D->lt);
    must(cudaFree(D->lt_workspace));
    must(cudaStreamDestroy(D->stream));
    delete D->plans;
    delete D;
    return 0;
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static inline float to_storage(float x, float) { return x; }
static inline bf16 to_storage(float x, bf16) { return __float2bfloat16(x); }
static inline float from_storage(float x) { return x; }
static inline float from_storage(bf16 x) { return __bfloat162float(x); }

/* x after a conversion to the storage type and back. */
template <typename T> static inline void round_to(Numbers &x) {
    for (float &v : x) v = from_storage(to_storage(v, T()));
}

template <typename X> static inline X *memory_of(size_t n) {
    void *p = NULL;
    must(cudaMalloc(&p, (n ? n : 1) * sizeof(X)));
    held.push_back(p);
    return (X *)p;
}

/* Copies x to the device as T. */
template <typename T> static inline T *device_numbers(const Numbers &x) {
    std::vector<T> copy(x.size());
    for (size_t i = 0; i < x.size(); i++) copy[i] = to_storage(x[i], T());
    T *p = memory_of<T>(x.size());
    must(cudaMemcpyAsync(p, copy.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice, D->stream));
    must(cudaStreamSynchronize(D->stream));
    return p;
}

/* Allocates n elements of NaN, so that elements which are not written show. */
template <typename T> static inline T *device_garbage(size_t n) { return device_numbers<T>(Numbers(n, NAN)); }

static inline int32_t *device_indices(const Indices &x) {
    int32_t *p = memory_of<int32_t>(x.size());
    must(cudaMemcpyAsync(p, x.data(), x.size() * sizeof(int32_t), cudaMemcpyHostToDevice, D->stream));
    must(cudaStreamSynchronize(D->stream));
    return p;
}

template <typename T> static inline Numbers fetch(const T *p, size_t n) {
    std::vector<T> copy(n);
    device_wait();
    must(cudaMemcpyAsync(copy.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost, D->stream));
    device_wait();
    Numbers x(n);
    for (size_t i = 0; i < n; i++) x[i] = from_storage(copy[i]);
    return x;
}

static inline Indices fetch_indices(const int32_t *p, size_t n) {
    Indices x(n);
    device_wait();
    must(cudaMemcpyAsync(x.data(), p, n * sizeof(int32_t), cudaMemcpyDeviceToHost, D->stream));
    device_wait();
    return x;
}

static inline Numbers normals(Random *r, size_t n, double amplitude) {
    Numbers x(n);
    for (float &v : x) v = (float)(amplitude * random_normal(r));
    return x;
}

/* ---- comparison ------------------------------------------------------------------------------------------------ */

/* Checks |got - want| <= tolerance * size. */
static inline void compare(const char *what, const Numbers &got, const Doubles &want, const Doubles &size,
                           double tolerance) {
    assert_int_equal(got.size(), want.size());
    for (size_t i = 0; i < got.size(); i++)
        if (!(fabs(got[i] - want[i]) <= tolerance * size[i] + 1e-30))
            fail_msg("%s[%zu] is %.9g, expected %.9g within %.2g", what, i, got[i], want[i], tolerance * size[i]);
}

static inline bool same_bits(const Numbers &a, const Numbers &b) {
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

/* ---- running --------------------------------------------------------------------------------------------------- */

#define KERNEL_TEST(name) cmocka_unit_test_teardown(name, kernels_clear)

/* On the processor: once per seed (under sanitizers only with the last one). On a GPU: once. */
template <size_t N> static inline int kernels_run(const struct CMUnitTest (&tests)[N], int seeds) {
    int failed = 0;
#ifdef CUDA_HOST
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const int first = seeds - 1; /* slow, and what they find does not depend on the order */
#else
    const int first = 0;
#endif
    for (int seed = first; seed < seeds && !failed; seed++) {
        cuda_host_seed((uint64_t)seed);
        failed = cmocka_run_group_tests(tests, kernels_open, kernels_close);
    }
#else
    (void)seeds;
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        fprintf(stderr, "no GPU here\n");
        return 1;
    }
    failed = cmocka_run_group_tests(tests, kernels_open, kernels_close);
#endif
    return failed;
}

#endif
