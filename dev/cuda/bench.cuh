/* bench.cuh - shared parts of the kernel benchmarks: a device, its measured peak rates, a clock, comparison.
 *
 * A benchmark is one file with numbered versions of one kernel, from the simplest to the one that the library uses.
 * Each version is first checked against loops in double on the CPU. Then it is timed: events around many launches, over
 * several sets of buffers that together exceed the L2 cache, so that no set is still cached. Peak rates are measured on
 * the device, never looked up: a copy through memory, and cuBLASLt's product of large matrices.
 *
 *     build/cuda_attention        all versions        build/cuda_attention 3    only version 3
 *
 * make build/check_cuda_attention compiles the same file with tests/cuda_host. It runs on a machine without a GPU,
 * checks each version, and prints that timings need a GPU.
 */
#ifndef DEV_CUDA_BENCH_CUH
#define DEV_CUDA_BENCH_CUH

#include "../../llmc/cuda/matmul.cuh"
#include "../../llmc/base/random.h"
#include <algorithm>
#include <vector>

typedef std::vector<float> Numbers;
typedef std::vector<double> Doubles;
typedef std::vector<int32_t> Indices;

struct Bench {
    Device *d;
    bool gpu;        /* false: the kernels run on the CPU and nothing is timed */
    int only;        /* the selected version; 0: all */
    size_t l2_bytes; /* size of the L2 cache */
    double copy;     /* bytes/s, read plus written */
    double matmul;   /* FLOP/s of bf16 products */
    std::vector<void *> memory;
};

static inline void bench_must(cudaError_t status, const char *what) {
    if (status == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
    exit(1);
}

static inline void bench_wait(Bench *b) {
    bench_must(cudaStreamSynchronize(b->d->stream), "a kernel");
    if (!b->d->failed) return;
    fprintf(stderr, "%s\n", b->d->error.text);
    exit(1);
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

template <typename X> static inline X *bench_memory(Bench *b, size_t n) {
    void *p = NULL;
    bench_must(cudaMalloc(&p, n * sizeof(X)), "cudaMalloc");
    bench_must(cudaMemsetAsync(p, 0, n * sizeof(X), b->d->stream), "cudaMemset");
    b->memory.push_back(p);
    return (X *)p;
}

static inline void bench_free(Bench *b) {
    bench_wait(b);
    for (void *p : b->memory) cudaFree(p);
    b->memory.clear();
}

static inline float bench_storage(float x, float) { return x; }
static inline bf16 bench_storage(float x, bf16) { return __float2bfloat16(x); }
static inline float bench_float(float x) { return x; }
static inline float bench_float(bf16 x) { return __bfloat162float(x); }

template <typename T> static inline T *bench_upload(Bench *b, const Numbers &x) {
    std::vector<T> copy(x.size());
    for (size_t i = 0; i < x.size(); i++) copy[i] = bench_storage(x[i], T());
    T *p = bench_memory<T>(b, x.size());
    bench_must(cudaMemcpyAsync(p, copy.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice, b->d->stream), "upload");
    bench_wait(b);
    return p;
}

static inline int32_t *bench_upload(Bench *b, const Indices &x) {
    int32_t *p = bench_memory<int32_t>(b, x.size());
    bench_must(cudaMemcpyAsync(p, x.data(), x.size() * 4, cudaMemcpyHostToDevice, b->d->stream), "upload");
    bench_wait(b);
    return p;
}

template <typename T> static inline Numbers bench_fetch(Bench *b, const T *p, size_t n) {
    std::vector<T> copy(n);
    Numbers x(n);
    bench_wait(b);
    bench_must(cudaMemcpyAsync(copy.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost, b->d->stream), "download");
    bench_wait(b);
    for (size_t i = 0; i < n; i++) x[i] = bench_float(copy[i]);
    return x;
}

/* Normally distributed numbers, rounded to T. */
template <typename T> static inline Numbers bench_normals(Random *r, size_t n, double amplitude) {
    Numbers x(n);
    for (float &v : x) v = bench_float(bench_storage((float)(amplitude * random_normal(r)), T()));
    return x;
}

/* The same, but fast, for timings: repeats a few thousand numbers. */
template <typename T> static inline T *bench_fill(Bench *b, size_t n, double amplitude) {
    Random r = random_start(1, n);
    const Numbers some = bench_normals<T>(&r, 4099, amplitude);
    Numbers x(n);
    for (size_t i = 0; i < n; i++) x[i] = some[i % some.size()];
    return bench_upload<T>(b, x);
}

/* The number of sets of buffers, of `bytes` each, that exceed twice the L2 cache; between 2 and 16. */
static inline int bench_sets(const Bench *b, size_t bytes) {
    const size_t sets = 2 * b->l2_bytes / (bytes ? bytes : 1) + 1;
    return (int)(sets < 2 ? 2 : sets < 16 ? sets : 16);
}

/* ---- clock ----------------------------------------------------------------------------------------------------- */

/* Seconds per call of run(set), with set = 0 .. sets-1 in turn: the best of three measurements of about 0.2 s. */
template <typename F> static inline double bench_seconds(Bench *b, int sets, F run) {
    cudaEvent_t start, end;
    float ms = 0, best = 1e30f;
    bench_must(cudaEventCreate(&start), "cudaEventCreate");
    bench_must(cudaEventCreate(&end), "cudaEventCreate");
    int repeats = 3;
    for (int round = 0; round < 4; round++) { /* round 0 warms up and determines the number of calls in 0.2 s */
        cudaEventRecord(start, b->d->stream);
        for (int i = 0; i < repeats; i++) run(i % sets);
        cudaEventRecord(end, b->d->stream);
        bench_wait(b);
        bench_must(cudaEventElapsedTime(&ms, start, end), "cudaEventElapsedTime");
        ms /= (float)repeats;
        if (round) best = ms < best ? ms : best;
        else repeats = (int)std::min(10000.0f, std::max(3.0f, 200 / std::max(ms, 1e-3f)));
    }
    cudaEventDestroy(start), cudaEventDestroy(end);
    return best * 1e-3;
}

/* ---- start ----------------------------------------------------------------------------------------------------- */

__global__ static void bench_copy_kernel(float *__restrict__ to, const float *__restrict__ from, size_t words) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += (size_t)gridDim.x * blockDim.x)
        wide_store_once(to + 4 * i, wide_load_once(from + 4 * i));
}

static inline void bench_ceilings(Bench *b) {
    Device *d = b->d;
    const size_t words = (size_t)64 << 20; /* 1 GiB each */
    float *from = bench_memory<float>(b, 4 * words), *to = bench_memory<float>(b, 4 * words);
    const double seconds = bench_seconds(b, 1, [&](int) {
        LAUNCH(bench_copy_kernel, (unsigned)d->processors * 16, 512, 0, d->stream, to, from, words);
    });
    b->copy = 32.0 * (double)words / seconds;
    bench_free(b);
    const int n = 8192;
    bf16 *x = bench_fill<bf16>(b, (size_t)n * n, 1), *w = bench_fill<bf16>(b, (size_t)n * n, 1);
    bf16 *out = bench_memory<bf16>(b, (size_t)n * n);
    b->matmul =
        2.0 * n * n * n / bench_seconds(b, 1, [&](int) { cuda_matmul_nt<bf16, bf16>(d, out, x, w, n, n, n, 1, 0); });
    bench_free(b);
}

static inline Bench bench_start(int argc, char **argv, const char *what) {
    Bench b = {};
    cudaDeviceProp p;
    int devices = 0;
    if (argc > 2 || (argc == 2 && (b.only = atoi(argv[1])) < 1)) {
        fprintf(stderr, "usage: %s [VERSION]\n", argv[0]);
        exit(2);
    }
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        fprintf(stderr, "%s: no GPU found; use make build/check_cuda_%s to check the kernels on the CPU\n", what, what);
        exit(1);
    }
    bench_must(cudaGetDeviceProperties(&p, 0), "cudaGetDeviceProperties");
    Device *d = b.d = new Device();
    d->processors = p.multiProcessorCount;
    d->major = p.major;
    d->minor = p.minor;
    d->shared_limit = p.sharedMemPerBlockOptin;
    d->lt_workspace_bytes = LT_WORKSPACE_BYTES;
    bench_must(cudaStreamCreate(&d->stream), "cudaStreamCreate");
    bench_must(cudaMalloc(&d->lt_workspace, d->lt_workspace_bytes), "cudaMalloc");
    if (cublasLtCreate(&d->lt) != CUBLAS_STATUS_SUCCESS) {
        fprintf(stderr, "cublasLtCreate failed\n");
        exit(1);
    }
    d->plans = new MatmulPlan();
    b.l2_bytes = (size_t)p.l2CacheSize;
#ifdef CUDA_HOST
    (void)bench_ceilings;
    printf("# %s on the CPU: every version is checked; timings need a GPU\n", what);
#else
    b.gpu = true;
    bench_ceilings(&b);
    printf("# %s on %s: copy %.0f GB/s, cuBLASLt bf16 %.0f TFLOP/s\n", what, p.name, b.copy * 1e-9, b.matmul * 1e-12);
#endif
    return b;
}

static inline bool bench_wants(const Bench *b, int version) { return !b->only || b->only == version; }

/* ---- results --------------------------------------------------------------------------------------------------- */

/* Returns max |got - want| / max |want|; ends the program if it exceeds the tolerance. */
static inline double bench_compare(const char *what, int version, const Numbers &got, const Doubles &want,
                                   double tolerance) {
    double size = 1e-30, error = 0;
    for (double x : want) size = std::max(size, fabs(x));
    for (size_t i = 0; i < want.size(); i++) {
        const double e = fabs(got[i] - want[i]) / size;
        if (!(e <= tolerance)) {
            printf("%s, version %d: [%zu] is %g, expected %g\n", what, version, i, got[i], want[i]);
            exit(1);
        }
        error = std::max(error, e);
    }
    return error;
}

/* Prints one line per version. bytes: minimum bytes moved; flops: FLOPs of the arithmetic; 0 omits the column. */
static inline void bench_line(const Bench *b, const char *what, int version, const char *name, double error,
                              double seconds, double bytes, double flops) {
    printf("%-16s %2d  %-58s error %.1e", what, version, name, error);
    if (b->gpu) {
        printf("  %9.1f us", seconds * 1e6);
        if (bytes > 0) printf("  %6.0f GB/s %3.0f%% of copy", bytes / seconds * 1e-9, 100 * bytes / seconds / b->copy);
        if (flops > 0)
            printf("  %6.1f TFLOP/s %3.0f%% of matmul", flops / seconds * 1e-12, 100 * flops / seconds / b->matmul);
    }
    printf("\n");
    fflush(stdout);
}

#endif
