/* bench_quantized.c - products of a few rows with quantised matrices (llmc/cpu/quantized_rows.h), as decode needs them.
 *
 *     make build/bench_quantized && build/bench_quantized [--type Q4] [--rows 1,8] [--out 3072] [--in 768] [--float]
 *     (OMP_NUM_THREADS sets the number of threads)
 *
 * The matrices, of random blocks, are larger than the caches together, so that they come from memory as they do in a
 * model. Each line gives a type and a number of rows; the time of a product; GB/s of blocks read, and their share of the
 * read bandwidth; GFLOP/s, and their share of the peak of fused multiply-adds. --float adds oneDNN's product with packed
 * float32 weights. Times are the processor's, divided by the number of threads, and of the best of several passes: another
 * program on the same cores disturbs them little. The table goes to standard output.
 */
#include "../../llmc/base/options.h"
#include "bench.h"

static struct {
    int64_t out, in, megabytes, passes;
    const char *rows, *type;
    bool floats;
} o = {.out = 3072, .in = 768, .megabytes = 96, .passes = 5, .rows = "1,2,4,8,16,32", .type = ""};

static const Option options[] = {OPTION_TEXT("rows", 0, &o.rows, "N[,N...]", "rows of x"),
                                 OPTION_TEXT("type", 0, &o.type, "TEXT", "only types whose name contains TEXT"),
                                 OPTION_INT("out", 0, &o.out, 1, 1 << 20, "rows of the matrix"),
                                 OPTION_INT("in", 0, &o.in, 256, 1 << 16, "columns of the matrix, a multiple of 256"),
                                 OPTION_INT("megabytes", 0, &o.megabytes, 1, 1 << 14, "size of all matrices of a type"),
                                 OPTION_INT("passes", 0, &o.passes, 1, 1000, "timed passes over all matrices"),
                                 OPTION_FLAG("float", 0, &o.floats, "also time packed float32 weights"),
                                 OPTION_END};
static const OptionAbout about = {"[options]", "Times products of a few rows with quantised matrices."};

/* The share of a thread in the processor time. */
static double thread_seconds(void) { return bench_processor_seconds() / omp_get_max_threads(); }

static void *random_blocks(QuantType type, size_t n) {
    const size_t bytes = quant_bytes(type, n);
    uint32_t *b = (uint32_t *)xmalloc(bytes + 4), state = 1;
    for (size_t i = 0; i < bytes / 4; i++) b[i] = (state = state * 1664525u + 1013904223u) & 0xBBFFBBFFu; /* finite */
    return b;
}

/* type QUANT_COUNT: float32 weights, packed by oneDNN. */
static void time_type(Device *d, QuantType type, int N, double peak, double bandwidth) {
    const int M = (int)o.out, K = (int)o.in;
    const size_t elements = (size_t)M * (size_t)K;
    const bool plain = type == QUANT_COUNT;
    const size_t bytes = plain ? elements * sizeof(float) : quant_bytes(type, elements);
    int copies = (int)((size_t)o.megabytes * 1000000 / bytes);
    if (!copies) copies = 1;
    void **at = (void **)xcalloc((size_t)copies, sizeof *at);
    for (int i = 0; i < copies; i++) at[i] = random_blocks(plain ? QUANT_F32 : type, elements);
    const size_t rows = (size_t)(N + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN;
    float *x = (float *)cpu_new(true, rows * (size_t)K * sizeof *x, "x", NULL);
    float *out = (float *)cpu_new(true, rows * (size_t)M * sizeof *out, "out", NULL);
    for (size_t i = 0; i < (size_t)(N * K); i++) x[i] = (float)(i % 13) - 6;
    double best = INFINITY;
    for (int64_t pass = -1; pass < o.passes; pass++) {
        const double start = thread_seconds();
        for (int i = 0; i < copies; i++) {
            const QuantMatrix w = {.parts = 1, .type = {(int)type}, .rows = {M}, .blocks = {(const Blocks *)at[i]}};
            if (plain) cpu_linear_forward(d, (Acts *)out, (Acts *)x, (Weights *)at[i], NULL, N, K, M);
            else cpu_quant_forward(d, (Acts *)out, (Acts *)x, &w, NULL, N, K, M);
        }
        const double t = (thread_seconds() - start) / copies;
        if (pass >= 0 && t < best) best = t;
    }
    const double read = (double)bytes / best, flops = 2.0 * N * (double)elements / best;
    printf("%-8s %4d %10.1f us %8.1f GB/s %4.0f %% %8.1f GFLOP/s %4.0f %%\n",
           plain ? "float32" : quant_info(type)->name, N, 1e6 * best, 1e-9 * read, 100 * read / bandwidth, 1e-9 * flops,
           100 * flops / peak);
    for (int i = 0; i < copies; i++) {
        if (plain) gemm_weights_changed(d, (const float *)at[i], elements, true);
        free(at[i]);
    }
    cpu_release(d, x), cpu_release(d, out);
    free(at);
}

int main(int argc, char **argv) {
    static const QuantType types[] = {QUANT_Q8_0, QUANT_Q4_0, QUANT_Q4_1, QUANT_Q4_K, QUANT_Q6_K, QUANT_Q5_0,
                                      QUANT_Q5_1, QUANT_Q5_K, QUANT_F16,  QUANT_BF16, QUANT_COUNT};
    Error e;
    Device *d;
    options_parse_all(options, &about, argc, argv);
    if (o.in % QUANT_SUPER) usage_error("--in must be a multiple of %d", QUANT_SUPER);
    if (!cpu_open(&d, DTYPE_FLOAT32, &e)) die("%s", e.text);
    const double peak = cpu_peak(d), bandwidth = 1e9 * bench_read_bandwidth_by(thread_seconds);
    printf("%d threads, %lld x %lld: peak %.0f GFLOP/s, read bandwidth %.1f GB/s\n", omp_get_max_threads(),
           (long long)o.out, (long long)o.in, 1e-9 * peak, 1e-9 * bandwidth);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        if (types[t] == QUANT_COUNT ? !o.floats : !strstr(quant_info(types[t])->name, o.type)) continue;
        for (const char *p = o.rows; *p;) {
            char *end;
            const long N = strtol(p, &end, 10);
            if (end == p || N < 1 || N > 4096 || (*end && *end != ','))
                usage_error("--rows %s: expected N[,N...]", o.rows);
            time_type(d, types[t], (int)N, peak, bandwidth);
            p = *end ? end + 1 : end;
        }
    }
    cpu_close(d);
    return 0;
}
