/* bench_ops.c - benchmark of the memory-bound operations, relative to the bandwidth of this machine.
 *
 *     make build/bench_ops && build/bench_ops [--rows 4096] [--width 768] [--seconds 0.2] [--match gelu]
 *     (OMP_NUM_THREADS sets the number of threads)
 *
 * GB/s counts the bytes that an operation must read and write, each once. The ceiling is a copy with ordinary stores,
 * which are the only ones in llmc, or a read if little is written; both are measured first. A share above 100 % means
 * that part of the data was in the processor's caches. The table goes to standard output.
 */
#include "../../llmc/base/options.h"
#include "bench.h"

static struct {
    int64_t rows, width;
    double seconds;
    const char *match;
} o = {4096, 768, 0.2, ""};

static const Option options[] = {OPTION_INT("rows", 0, &o.rows, 16, 1 << 20, "rows of the batch"),
                                 OPTION_INT("width", 0, &o.width, 128, 65536, "channels"),
                                 OPTION_REAL("seconds", 0, &o.seconds, 0.001, 100, "time for each operation"),
                                 OPTION_TEXT("match", 0, &o.match, "TEXT", "only operations whose name contains TEXT"),
                                 OPTION_END};
static const OptionAbout about = {"[options]", "Times the memory-bound operations."};

enum { V = 50257, PARAMETERS = 16 << 20, HEAD_ROWS = 128 };

static double copy_bandwidth, read_bandwidth;

/* The passes of cpu_head() over a chunk of logits (HEAD_ROWS, V). */
static void head_softmax(const float *logits, HeadRow *rows) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < HEAD_ROWS; r++) rows[r] = head_row(logits + (size_t)r * V, V, 1);
}

static void head_gradient(float *logits, const HeadRow *rows) {
#pragma omp parallel for schedule(static)
    for (int r = 0; r < HEAD_ROWS; r++) head_row_backward(logits + (size_t)r * V, &rows[r], V, V, 1, 1, 1e-3f, 0, 0);
}

/* Repeats `statement`, which moves `bytes`, and prints its best time; `ceiling` in GB/s. */
#define BENCH(name, bytes, ceiling, statement)                                                                         \
    if (strstr(name, o.match)) {                                                                                       \
        double best = INFINITY;                                                                                        \
        const double end = clock_seconds() + o.seconds;                                                                \
        for (int run = 0; run < 3 || clock_seconds() < end; run++) {                                                   \
            const double start = clock_seconds();                                                                      \
            statement;                                                                                                 \
            const double t = clock_seconds() - start;                                                                  \
            if (t < best) best = t;                                                                                    \
        }                                                                                                              \
        printf("%-28s %10.1f us %8.1f GB/s %6.0f%%\n", name, 1e6 * best, 1e-9 * (bytes) / best,                        \
               1e-7 * (bytes) / best / (ceiling));                                                                     \
        fflush(stdout);                                                                                                \
    }

#define A(x) ((Acts *)(x))
#define F(x) ((Floats *)(x))
#define W(x) ((Weights *)(x))
#define I(x) ((Ints *)(x))

int main(int argc, char **argv) {
    Error e;
    Device *d = NULL;
    options_parse_all(options, &about, argc, argv);
    const Backend *b = backend_cpu();
    if (!b->open(&d, DTYPE_FLOAT32, &e)) die("%s", e.text);
    copy_bandwidth = bench_copy_bandwidth();
    read_bandwidth = bench_read_bandwidth();
    printf("%d threads, %lld rows, %lld channels: copy %.1f GB/s, read %.1f GB/s\n\n", omp_get_max_threads(),
           (long long)o.rows, (long long)o.width, copy_bandwidth, read_bandwidth);
    const int N = (int)o.rows, C = (int)o.width;
    const size_t n = (size_t)N * (size_t)C;
    const double row = 4.0 * (double)n; /* bytes of one array of activations (N, C) */
    float *x = bench_floats(n, 1, 1), *y = bench_floats(n, 1, 2), *z = bench_floats(n, 1, 3),
          *u = bench_floats(n, 1, 4);
    float *mean = bench_floats((size_t)N, 1, 5), *rstd = bench_floats((size_t)N, 1, 6);
    float *w = bench_floats((size_t)C, 1, 7), *bias = bench_floats((size_t)C, 1, 8);
    float *dw = bench_floats((size_t)C, 1, 9), *db = bench_floats((size_t)C, 1, 10);
    float *dw4 = bench_floats(4 * (size_t)C, 1, 18), *wide = bench_floats(4 * n, 1, 11),
          *wide2 = bench_floats(4 * n, 1, 12);
    float *wte = bench_floats((size_t)V * (size_t)C, 1, 13), *dwte = bench_floats((size_t)V * (size_t)C, 1, 14);
    float *wpe = bench_floats((size_t)N * (size_t)C, 1, 15), *dwpe = bench_floats((size_t)N * (size_t)C, 1, 16);
    int32_t *token = (int32_t *)xmalloc((size_t)N * sizeof *token),
            *order = (int32_t *)xmalloc((size_t)N * sizeof *order);
    Random random = random_start(1, 17);
    for (int i = 0; i < N; i++) {
        token[i] = (int32_t)random_below(&random, V);
        order[i] = i;
    }

    BENCH("embed_forward", 3 * row, copy_bandwidth,
          b->embed_forward(d, A(x), W(wte), W(wpe), I(token), I(order), 1, N, C))
    BENCH("embed_backward", 6 * row, copy_bandwidth,
          b->embed_backward(d, F(dwte), F(dwpe), A(x), I(token), I(order), 1, N, C))
    for (int kind = NORM_LAYER; kind <= NORM_RMS; kind++) {
        const Norm norm = {.rows = N,
                           .channels = C,
                           .kind = (NormKind)kind,
                           .eps = 1e-5f,
                           .w = W(w),
                           .b = W(bias),
                           .x = A(x),
                           .mean = F(mean),
                           .rstd = F(rstd),
                           .out = A(y),
                           .dout = A(y),
                           .dx = A(z),
                           .dw = F(dw),
                           .db = F(db)};
        Norm residual = norm;
        residual.delta = A(u);
        residual.sum = A(z);
        BENCH(kind ? "RMSNorm, forward" : "layernorm, forward", 2 * row, copy_bandwidth, b->norm_forward(d, &norm))
        BENCH("with the residual", 4 * row, copy_bandwidth, b->norm_forward(d, &residual))
        BENCH("backward", 4 * row, copy_bandwidth, b->norm_backward(d, &norm))
    }
    BENCH("gelu_forward (4C)", 8 * row, copy_bandwidth, b->gelu_forward(d, A(wide), A(wide2), 4 * n))
    BENCH("gelu_backward (4C)", 12 * row, copy_bandwidth, b->gelu_backward(d, A(wide), A(wide2), 4 * n))
    BENCH("bias gradient (4C)", 4 * row, read_bandwidth, cpu_column_sums(d, dw4, wide, N, 4 * C))
    BENCH("gather_rows", 2 * row, copy_bandwidth, b->gather_rows(d, A(y), A(x), I(order), N, C))
    BENCH("scatter_rows", 3 * row, copy_bandwidth, b->scatter_rows(d, A(y), A(x), I(order), N, C))
    BENCH("kv_store", 4 * row, copy_bandwidth, b->kv_store(d, A(y), A(z), A(x), A(u), C, I(order), N, C))

    float *p = bench_floats(PARAMETERS, 1, 20), *g = bench_floats(PARAMETERS, 1, 21);
    float *m = bench_floats(PARAMETERS, 1, 22), *v = bench_floats(PARAMETERS, 1, 23);
    for (size_t i = 0; i < PARAMETERS; i++) v[i] = fabsf(v[i]);
    const AdamW step = {.n = PARAMETERS,
                        .lr = 1e-6f,
                        .beta1 = 0.9f,
                        .beta2 = 0.999f,
                        .eps = 1e-8f,
                        .grad_scale = 1,
                        .step = 100,
                        .weights = W(p),
                        .grad = F(g),
                        .m = F(m),
                        .v = F(v)};
    const double block = 4.0 * PARAMETERS;
    double sum = 0;
    BENCH("adamw", 7 * block, copy_bandwidth, b->adamw(d, &step))
    BENCH("square_sum", block, read_bandwidth, sum += b->square_sum(d, F(g), PARAMETERS))
    BENCH("zero", block, copy_bandwidth, b->zero(d, g, (size_t)block))
    float *logits = wte; /* reused for the passes of the head */
    HeadRow rows[HEAD_ROWS];
    BENCH("softmax of the head", 4.0 * HEAD_ROWS * V, read_bandwidth, head_softmax(logits, rows))
    BENCH("gradient of the head", 8.0 * HEAD_ROWS * V, copy_bandwidth, head_gradient(logits, rows))
    if (!isfinite(sum + (double)rows[0].log_sum)) die("a sum is not finite");

    free(x), free(y), free(z), free(u), free(mean), free(rstd), free(w), free(bias), free(dw), free(db), free(wide);
    free(wide2), free(wte), free(dw4), free(dwte), free(wpe), free(dwpe), free(token), free(order), free(p), free(g),
        free(m), free(v);
    b->close(d);
    return 0;
}
