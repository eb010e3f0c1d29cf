/* bench_gemm.c - benchmark of a model's matrix products (llmc/cpu/gemm.h), relative to the processor's peak.
 *
 *     make build/bench_gemm && build/bench_gemm [--dtype bf16] [--seconds 0.2] [--match decode]
 *     (OMP_NUM_THREADS sets the number of threads)
 *
 * Each shape gives one line: the time and GFLOP/s of the model's own path, in which weights are packed once per update
 * as in training and decode; its share of the peak of fused multiply-adds (or bfloat16 dot products) on registers; GB/s
 * of weights; the time of packing; and, for comparison, plain sgemm, which packs in every call. Decode shapes cycle
 * through several copies of the weights, so that these come from memory as they do in a model. The table goes to
 * standard output.
 */
#include "../../llmc/base/options.h"
#include "bench.h"

static struct {
    double seconds;
    int dtype;
    const char *match;
} o = {0.2, 0, ""};

static const Option options[] = {OPTION_CHOICE("dtype", 0, &o.dtype, "float32|bf16", "arithmetic type"),
                                 OPTION_REAL("seconds", 0, &o.seconds, 0.001, 100, "time for each shape"),
                                 OPTION_TEXT("match", 0, &o.match, "TEXT", "only shapes whose name contains TEXT"),
                                 OPTION_END};
static const OptionAbout about = {"[options]", "Times the matrix products of a model."};

typedef enum { GEMM_NT, GEMM_NN, GEMM_TN } GemmKind;

/* Sizes as in cpu/gemm.h: NT out[N,M] = x[N,K] w[M,K]^T, NN out[N,M] = x[N,K] w[K,M], TN out[M,K] +=
 * y[N,M]^T x[N,K]. */
typedef struct Shape {
    const char *name;
    GemmKind kind;
    int N, M, K;
} Shape;

static const Shape shapes[] = {
    {"124M forward qkv", GEMM_NT, 1024, 2304, 768},
    {"124M forward attention out", GEMM_NT, 1024, 768, 768},
    {"124M forward mlp up", GEMM_NT, 1024, 3072, 768},
    {"124M forward mlp down", GEMM_NT, 1024, 768, 3072},
    {"124M head", GEMM_NT, 352, 50304, 768},
    {"124M dx qkv", GEMM_NN, 1024, 768, 2304},
    {"124M dx attention out", GEMM_NN, 1024, 768, 768},
    {"124M dx mlp up", GEMM_NN, 1024, 768, 3072},
    {"124M dx mlp down", GEMM_NN, 1024, 3072, 768},
    {"124M dx head", GEMM_NN, 352, 768, 50304},
    {"124M dw qkv", GEMM_TN, 1024, 2304, 768},
    {"124M dw attention out", GEMM_TN, 1024, 768, 768},
    {"124M dw mlp up", GEMM_TN, 1024, 3072, 768},
    {"124M dw mlp down", GEMM_TN, 1024, 768, 3072},
    {"124M dw head", GEMM_TN, 352, 50304, 768},
    {"124M decode 1 qkv", GEMM_NT, 1, 2304, 768},
    {"124M decode 1 mlp up", GEMM_NT, 1, 3072, 768},
    {"124M decode 1 mlp down", GEMM_NT, 1, 768, 3072},
    {"124M decode 1 head", GEMM_NT, 1, 50304, 768},
    {"124M decode 4 mlp up", GEMM_NT, 4, 3072, 768},
    {"124M decode 8 mlp up", GEMM_NT, 8, 3072, 768},
    {"124M decode 16 mlp up", GEMM_NT, 16, 3072, 768},
    {"124M decode 32 qkv", GEMM_NT, 32, 2304, 768},
    {"124M decode 32 mlp up", GEMM_NT, 32, 3072, 768},
    {"124M decode 32 mlp down", GEMM_NT, 32, 768, 3072},
    {"124M decode 32 head", GEMM_NT, 32, 50304, 768},
    {"124M decode 64 mlp up", GEMM_NT, 64, 3072, 768},
    {"384 forward mlp up", GEMM_NT, 4096, 1536, 384},
    {"384 forward mlp down", GEMM_NT, 4096, 384, 1536},
    {"384 head", GEMM_NT, 4096, 384, 384},
    {"384 dx mlp down", GEMM_NN, 4096, 1536, 384},
    {"384 dw mlp up", GEMM_TN, 4096, 1536, 384},
    {"384 decode 64 qkv", GEMM_NT, 64, 1152, 384},
    {"384 decode 64 mlp up", GEMM_NT, 64, 1536, 384},
    {"384 decode 64 mlp down", GEMM_NT, 64, 384, 1536},
    {"128 forward mlp up", GEMM_NT, 4096, 512, 128},
    {"128 dx mlp down", GEMM_NN, 4096, 512, 128},
    {"128 dw mlp up", GEMM_TN, 4096, 512, 128},
    {"128 decode 512 mlp up", GEMM_NT, 512, 512, 128},
    {"128 decode 64 mlp up", GEMM_NT, 64, 512, 128},
};

static void packed(Device *d, const Shape *s, float *out, const float *x, float *w) {
    if (s->kind == GEMM_NT) gemm_nt(d, out, x, w, NULL, s->N, s->M, s->K);
    if (s->kind == GEMM_NN) gemm_nn(d, out, x, w, s->N, s->M, s->K);
    if (s->kind == GEMM_TN) gemm_tn(d, w, x, out, s->N, s->M, s->K);
}

static void plain(Device *d, const Shape *s, float *out, const float *x, float *w) {
    const int N = s->N, M = s->M, K = s->K;
    (void)d;
    if (s->kind == GEMM_NT) dnnl_sgemm('N', 'T', N, M, K, 1, x, K, w, K, 0, out, M);
    if (s->kind == GEMM_NN) dnnl_sgemm('N', 'N', N, M, K, 1, x, K, w, M, 0, out, M);
    if (s->kind == GEMM_TN) dnnl_sgemm('T', 'N', M, K, N, 1, x, M, out, K, 1, w, K);
}

/* Returns the seconds of one product, in the shortest pass over all copies of the weights. */
static double shortest(void (*product)(Device *, const Shape *, float *, const float *, float *), Device *d,
                       const Shape *s, float *out, const float *x, float *w, int copies) {
    const size_t weights = (size_t)s->M * (size_t)s->K;
    double best = INFINITY;
    for (int i = 0; i < copies; i++) product(d, s, out, x, w + (size_t)i * weights);
    const double end = clock_seconds() + o.seconds;
    do {
        const double start = clock_seconds();
        for (int i = 0; i < copies; i++) product(d, s, out, x, w + (size_t)i * weights);
        const double t = (clock_seconds() - start) / copies;
        if (t < best) best = t;
    } while (clock_seconds() < end);
    return best;
}

int main(int argc, char **argv) {
    Error e;
    Device *d = NULL;
    options_parse_all(options, &about, argc, argv);
    const double peak = bench_peak(o.dtype ? DTYPE_BF16 : DTYPE_FLOAT32);
    if (!cpu_open(&d, o.dtype ? DTYPE_BF16 : DTYPE_FLOAT32, &e)) die("%s", e.text);
    printf("%d threads, %s: %.0f GFLOP/s on registers, %.1f GB/s read\n\n", omp_get_max_threads(),
           o.dtype ? "bf16" : "float32", peak, bench_read_bandwidth());
    printf("%-28s %-2s %5s %6s %6s %10s %8s %6s %7s %9s %12s\n", "product", "", "N", "M", "K", "us", "GFLOP/s", "share",
           "GB/s", "pack us", "sgemm GF/s");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const Shape *s = &shapes[i];
        if (!strstr(s->name, o.match)) continue;
        const size_t N = (size_t)gemm_rows(s->N), M = (size_t)s->M, K = (size_t)s->K;
        const bool decode = strstr(s->name, "decode");
        const int copies = decode && M * K < (16u << 20) ? (int)((24u << 20) / (M * K)) + 1 : 1;
        /* NT, NN: x (N,K), out (N,M); TN: `x` holds y (N,M) and `out` holds x (N,K) */
        float *x = bench_floats(N * (s->kind == GEMM_TN ? M : K), 1, 1);
        float *out = bench_floats(N * (s->kind == GEMM_TN ? K : M), 1, 2);
        float *w = bench_floats(M * K * (size_t)copies, 0.02f, 3);
        const double flops = 2.0 * s->N * s->M * s->K, t = shortest(packed, d, s, out, x, w, copies);
        const double sgemm = shortest(plain, d, s, out, x, w, copies);
        double pack = 0;
        if (d->pack_count) {
            gemm_weights_changed(d, w, M * K, false);
            const double start = clock_seconds();
            packed(d, s, out, x, w);
            pack = clock_seconds() - start - t;
        }
        printf("%-28s %s %5d %6d %6d %10.1f %8.1f %5.0f%% %7.1f %9.0f %12.1f\n", s->name, &"NT\0NN\0TN"[3 * s->kind],
               s -> N, s -> M, s -> K, 1e6 * t, 1e-9 * flops / t, 1e-7 * flops / t / peak,
               1e-9 * (double)(M * K) * (o.dtype ? 2 : 4) / t, 1e6 * fmax(pack, 0), 1e-9 * flops / sgemm);
        fflush(stdout);
        if (!cpu_sync(d, &e)) die("%s", e.text);
        gemm_weights_changed(d, w, M * K * (size_t)copies, true);
        free(x), free(out), free(w);
    }
    cpu_close(d);
    return 0;
}
