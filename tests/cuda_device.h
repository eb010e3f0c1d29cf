/* cuda_device.h - fixtures of the CUDA backend's tests: the library, device memory and comparison.
 *
 * The tests use the library that LLMC_CUDA_LIBRARY names, by default build/llmc_cuda_host.so: llmc/cuda/cuda.cu
 * compiled for the processor (tests/cuda_host), which needs no GPU. `make test-gpu` runs the same programs with
 * llmc_cuda.so.
 *
 * A result stored as type T may be off by half a unit in T's last place and by the errors of the float32 sums that it
 * comes from: n terms in any order are off by at most about n u sum|term|, u = 2^-24 (Higham, Accuracy and Stability of
 * Numerical Algorithms, 3.1). */
#ifndef TESTS_CUDA_DEVICE_H
#define TESTS_CUDA_DEVICE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/error.h"    /* Error */
#include "../llmc/base/random.h"   /* Random, random_normal */
#include "../llmc/device.h"        /* backend_cuda */
#include "../llmc/model/backend.h" /* DTYPE_BF16, DTYPE_FLOAT32, ROW_ALIGN, Acts, ... */
#include "arrays.h"                /* FLOATS, host, arrays_free */

static const double U = 0x1p-24;
static const Backend *B;
static Device *D;
static Dtype dtype;

static void (*host_seed)(uint64_t); /* of the harness; NULL on a GPU */

/* ==== Memory, freed after each test ==== */

enum { HELD = 4000, CANARY_BYTES = 64 };
static struct {
    void *device;
    size_t bytes;
} held[HELD];
static int held_count;

static inline float from_bf16(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

/* Rounds to the nearest bfloat16 (8 bits of significand, ties to even). It uses frexp instead of bit operations, so
 * that it is independent of the backend. */
static inline double nearest_bf16(double x) {
    int exponent;
    const double m = frexp(x, &exponent);
    return ldexp(nearbyint(m * 256), exponent - 8);
}

static inline uint16_t to_bf16(float x) {
    const float near = (float)nearest_bf16((double)x);
    uint32_t bits;
    memcpy(&bits, isnan(x) ? &x : &near, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* x as the device stores it. */
static inline float stored(float x) { return dtype == DTYPE_BF16 ? (float)nearest_bf16((double)x) : x; }

/* Allocates `bytes` on the device: the first `given` come from x, then NaN, then a canary. */
static inline void *device_bytes(const void *x, size_t given, size_t bytes) {
    Error e;
    unsigned char *all = (unsigned char *)host(bytes + CANARY_BYTES, 1);
    memset(all, 0xff, bytes);
    memset(all + bytes, 0x5a, CANARY_BYTES);
    if (x) memcpy(all, x, given);
    void *memory = B->alloc(D, bytes + CANARY_BYTES, "a test", &e);
    if (!memory) fail_msg("%s", e.text);
    assert_int_equal((uintptr_t)memory % 64, 0);
    B->upload(D, memory, all, bytes + CANARY_BYTES);
    assert_true(held_count < HELD);
    held[held_count].device = memory;
    held[held_count++].bytes = bytes;
    return memory;
}

static inline Floats *floats(const float *x, size_t n) { return (Floats *)device_bytes(x, 4 * n, 4 * n); }
static inline Ints *ints(const int32_t *x, size_t n) { return (Ints *)device_bytes(x, 4 * n, 4 * n); }

/* Allocates n values in the storage type, then NaN up to `all` values. x may be NULL; its values must be exact in the
 * type. */
static inline void *narrow(const float *x, size_t n, size_t all) {
    if (dtype == DTYPE_FLOAT32) return device_bytes(x, 4 * n, 4 * all);
    uint16_t *half = (uint16_t *)host(n, 2);
    if (x)
        for (size_t i = 0; i < n; i++) half[i] = to_bf16(x[i]);
    return device_bytes(x ? half : NULL, 2 * n, 2 * all);
}

static inline Acts *acts(const float *x, int rows, int columns) {
    const size_t n = (size_t)rows * (size_t)columns;
    return (Acts *)narrow(x, n, (size_t)(rows + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN * (size_t)columns);
}
static inline Weights *weights(const float *x, size_t n) { return (Weights *)narrow(x, n, n); }

static inline float *fetch(const void *device, size_t n) {
    float *x = FLOATS(n);
    B->download(D, x, device, n * sizeof *x);
    return x;
}

static inline float *fetch_narrow(const void *device, size_t n) {
    if (dtype == DTYPE_FLOAT32) return fetch(device, n);
    uint16_t *half = (uint16_t *)host(n, 2);
    float *x = FLOATS(n);
    B->download(D, half, device, 2 * n);
    for (size_t i = 0; i < n; i++) x[i] = from_bf16(half[i]);
    return x;
}

static inline int check_memory(void **state) {
    (void)state;
    Error e;
    int broken = 0;
    if (!B->sync(D, &e)) {
        print_error("%s\n", e.text);
        broken = 1;
    }
    for (int i = 0; i < held_count; i++) {
        unsigned char end[CANARY_BYTES];
        B->download(D, end, (char *)held[i].device + held[i].bytes, sizeof end);
        for (int k = 0; k < CANARY_BYTES; k++) broken |= end[k] != 0x5a;
        B->release(D, held[i].device);
    }
    arrays_free();
    held_count = 0;
    return broken;
}

/* Random values that the storage type represents exactly. */
static inline float *noise(Random *r, size_t n, double amplitude) {
    float *x = FLOATS(n);
    for (size_t i = 0; i < n; i++) x[i] = stored((float)(amplitude * random_normal(r)));
    return x;
}

/* ==== Comparison ==== */

/* Checks |got - want| <= slack u size, plus `roundings` half units in the last place for values in the storage type. */
static inline void check(const char *what, const float *got, const double *want, const double *size, double slack,
                         double roundings, size_t n) {
    const double unit = dtype == DTYPE_BF16 ? roundings * 0x1p-8 : 0;
    for (size_t i = 0; i < n; i++) {
        const double allowed = slack * U * (size ? size[i] : fabs(want[i])) + 1.01 * unit * fabs(want[i]) + 1e-37;
        if (!(fabs(got[i] - want[i]) <= allowed))
            fail_msg("%s[%zu] is %.9g, expected %.9g within %.2g", what, i, got[i], want[i], allowed);
    }
}

/* ==== Fixtures ==== */

static inline const char *cuda_library(void) {
    if (!getenv("LLMC_CUDA_LIBRARY")) setenv("LLMC_CUDA_LIBRARY", "build/llmc_cuda_host.so", 0);
    return getenv("LLMC_CUDA_LIBRARY");
}

/* The harness's function that sets the seed for the order of threads and blocks; NULL if the library runs on a GPU. */
static inline void find_host_seed(void) {
    void *library = dlopen(cuda_library(), RTLD_NOW | RTLD_NOLOAD);
    if (!library) return;
    *(void **)&host_seed = dlsym(library, "cuda_host_seed");
}

static inline int open_as(Dtype type) {
    Error e;
    dtype = type;
    cuda_library();
    B = backend_cuda(type, &e);
    if (!B || !B->open(&D, type, &e)) {
        print_error("%s\n", e.text);
        return 1;
    }
    find_host_seed();
    return 0;
}
static inline int open_float32(void **state) {
    (void)state;
    return open_as(DTYPE_FLOAT32);
}
static inline int open_bf16(void **state) {
    (void)state;
    return open_as(DTYPE_BF16);
}
static inline int close_device(void **state) {
    (void)state;
    if (host_seed) host_seed(0);
    B->close(D);
    return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, check_memory)

#endif
