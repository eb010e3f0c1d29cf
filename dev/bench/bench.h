/* bench.h - shared parts of the benchmarks: machine ceilings, a clock for every backend operation, medians.
 *
 * The ceilings are measured, never looked up: the arithmetic peak of the backend (llmc/cpu/peak.h), and the bandwidth
 * of reading and of copying an array far larger than the caches.
 *
 * bench_backend() returns a copy of a backend's table with a clock around each operation. The same code runs, and llmc/
 * needs no change for it.
 *
 *     const Backend *b = bench_backend(backend_cpu());
 *     // run a model on b
 *     bench_split(stderr, steps, seconds);
 */
#ifndef LLMC_BENCH_H
#define LLMC_BENCH_H

#include "../../llmc/cpu/cpu.c"
#include "../../llmc/base/program.h"
#include <math.h>
#include <time.h>

/* ---- ceilings -------------------------------------------------------------------------------------------------- */

/* The arithmetic peak that the backend measures (llmc/cpu/peak.h), all threads: GFLOP/s. */
static inline double bench_peak(Dtype dtype) {
    Error e;
    Device *d;
    const Backend *b = backend_cpu_for(dtype);
    if (!b->open(&d, dtype, &e)) die("%s", e.text);
    const double peak = 1e-9 * b->peak(d);
    b->close(d);
    return peak;
}

enum { BENCH_ARRAY = 64 << 20 }; /* floats */

/* Read bandwidth in GB/s by this clock: all threads sum a large array. */
static inline double bench_read_bandwidth_by(double (*seconds)(void)) {
    float *x = (float *)xmalloc(BENCH_ARRAY * sizeof *x);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < BENCH_ARRAY; i++) x[i] = 1;
    double best = 0;
    for (int repeat = 0; repeat < 5; repeat++) {
        const double start = seconds();
        float total = 0;
#pragma omp parallel for reduction(+ : total) schedule(static)
        for (size_t i = 0; i < BENCH_ARRAY; i += 4096) {
            CpuVec sum[4] = {{0}};
            for (size_t j = 0; j < 4096; j += 4 * CPU_VEC)
                for (int k = 0; k < 4; k++) sum[k] += *(const CpuVec *)(x + i + j + k * CPU_VEC);
            total += ((sum[0] + sum[1]) + (sum[2] + sum[3]))[0];
        }
        const double rate = BENCH_ARRAY * sizeof *x / (seconds() - start) * 1e-9;
        if (total != 0 && rate > best) best = rate;
    }
    free(x);
    return best;
}

static inline double bench_read_bandwidth(void) { return bench_read_bandwidth_by(clock_seconds); }

/* Copy bandwidth in GB/s: all threads compute y = 2 x on large arrays with ordinary stores. Bytes read and written both
 * count. The processor also reads y before it writes it, which does not count. */
static inline double bench_copy_bandwidth(void) {
    float *x = (float *)xmalloc(BENCH_ARRAY * sizeof *x), *y = (float *)xmalloc(BENCH_ARRAY * sizeof *y);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < BENCH_ARRAY; i++) {
        x[i] = 1;
        y[i] = 0;
    }
    double best = 0;
    for (int repeat = 0; repeat < 5; repeat++) {
        const double start = clock_seconds();
#pragma omp parallel for simd schedule(static)
        for (size_t i = 0; i < BENCH_ARRAY; i++) y[i] = 2 * x[i];
        const double rate = 2.0 * BENCH_ARRAY * sizeof *x / (clock_seconds() - start) * 1e-9;
        if (y[BENCH_ARRAY / 2] == 2 && rate > best) best = rate;
    }
    free(x), free(y);
    return best;
}

/* ---- a clock for every operation ------------------------------------------------------------------------------- */

#define BENCH_OPS(X)                                                                                                   \
    X(zero, (Device * d, void *memory, size_t bytes), (d, memory, bytes))                                              \
    X(upload, (Device * d, void *device, const void *host, size_t bytes), (d, device, host, bytes))                    \
    X(download, (Device * d, void *host, const void *device, size_t bytes), (d, host, device, bytes))                  \
    X(embed_forward,                                                                                                   \
      (Device * d, Acts * out, const Weights *wte, const Weights *wpe, const Ints *token, const Ints *position,        \
       float scale, int N, int C),                                                                                     \
      (d, out, wte, wpe, token, position, scale, N, C))                                                                \
    X(embed_backward,                                                                                                  \
      (Device * d, Floats * dwte, Floats * dwpe, const Acts *dout, const Ints *token, const Ints *position,            \
       float scale, int N, int C),                                                                                     \
      (d, dwte, dwpe, dout, token, position, scale, N, C))                                                             \
    X(norm_forward, (Device * d, const Norm *n), (d, n))                                                               \
    X(norm_backward, (Device * d, const Norm *n), (d, n))                                                              \
    X(linear_forward,                                                                                                  \
      (Device * d, Acts * out, const Acts *x, const Weights *w, const Weights *b, int N, int IC, int OC),              \
      (d, out, x, w, b, N, IC, OC))                                                                                    \
    X(linear_backward,                                                                                                 \
      (Device * d, Acts * dx, Floats * dw, Floats * db, const Acts *dout, const Acts *x, const Weights *w, int N,      \
       int IC, int OC),                                                                                                \
      (d, dx, dw, db, dout, x, w, N, IC, OC))                                                                          \
    X(linear_gelu_forward,                                                                                             \
      (Device * d, Acts * pre, Acts * out, const Acts *x, const Weights *w, const Weights *b, int N, int IC, int OC),  \
      (d, pre, out, x, w, b, N, IC, OC))                                                                               \
    X(quant_forward,                                                                                                   \
      (Device * d, Acts * out, const Acts *x, const QuantMatrix *w, const Weights *b, int N, int IC, int OC),          \
      (d, out, x, w, b, N, IC, OC))                                                                                    \
    X(quant_backward, (Device * d, Acts * dx, const Acts *dout, const QuantMatrix *w, int N, int IC, int OC),          \
      (d, dx, dout, w, N, IC, OC))                                                                                     \
    X(quant_embed_forward,                                                                                             \
      (Device * d, Acts * out, const QuantMatrix *wte, const Weights *wpe, const Ints *token, const Ints *position,    \
       float scale, int N, int C),                                                                                     \
      (d, out, wte, wpe, token, position, scale, N, C))                                                                \
    X(mlp_backward, (Device * d, const MlpBackward *a), (d, a))                                                        \
    X(gelu_forward, (Device * d, Acts * out, const Acts *pre, size_t n), (d, out, pre, n))                             \
    X(gelu_backward, (Device * d, Acts * dinout, const Acts *pre, size_t n), (d, dinout, pre, n))                      \
    X(gate_forward, (Device * d, Acts * out, const Acts *pre, MlpKind kind, int N, int F), (d, out, pre, kind, N, F))  \
    X(gate_backward, (Device * d, Acts * dpre, const Acts *dout, const Acts *pre, MlpKind kind, int N, int F),         \
      (d, dpre, dout, pre, kind, N, F))                                                                                \
    X(rotary_table,                                                                                                    \
      (Device * d, Floats * table, const Ints *position, const Floats *frequency, float factor, int N, int half,       \
       int stride),                                                                                                    \
      (d, table, position, frequency, factor, N, half, stride))                                                        \
    X(rotary_forward, (Device * d, const Rotary *r), (d, r))                                                           \
    X(rotary_backward, (Device * d, const Rotary *r), (d, r))                                                          \
    X(lora_forward, (Device * d, const Lora *l), (d, l))                                                               \
    X(lora_backward, (Device * d, const Lora *l), (d, l))                                                              \
    X(add, (Device * d, Acts * x, const Acts *y, size_t n), (d, x, y, n))                                              \
    X(attention_forward, (Device * d, const Attention *a), (d, a))                                                     \
    X(attention_backward, (Device * d, const Attention *a), (d, a))                                                    \
    X(kv_store,                                                                                                        \
      (Device * d, Acts * cache_k, Acts * cache_v, const Acts *k, const Acts *v, int stride, const Ints *slot, int N,  \
       int KC),                                                                                                        \
      (d, cache_k, cache_v, k, v, stride, slot, N, KC))                                                                \
    X(gather_rows, (Device * d, Acts * out, const Acts *x, const Ints *row, int R, int C), (d, out, x, row, R, C))     \
    X(scatter_rows, (Device * d, Acts * x, const Acts *in, const Ints *row, int R, int C), (d, x, in, row, R, C))      \
    X(head, (Device * d, const Head *h), (d, h))                                                                       \
    X(sample, (Device * d, const Draw *s), (d, s))                                                                     \
    X(adamw, (Device * d, const AdamW *a), (d, a))

enum {
#define X(op_, parameters, arguments) BENCH_##op_,
    BENCH_OPS(X)
#undef X
        BENCH_square_sum,
    BENCH_OP_COUNT
};

typedef struct BenchOp {
    const char *name;
    double seconds;
    int64_t calls;
} BenchOp;

typedef struct BenchClock {
    const Backend *real;
    Backend timed;
    BenchOp op[BENCH_OP_COUNT];
} BenchClock;

static inline BenchClock *bench_clock(void) {
    static BenchClock clock;
    return &clock;
}

static inline void bench_count(int op, double start) {
    BenchOp *o = &bench_clock()->op[op];
    o->seconds += clock_seconds() - start;
    o->calls++;
}

#define X(op_, parameters, arguments)                                                                                  \
    static inline void bench_timed_##op_ parameters {                                                                  \
        const double start = clock_seconds();                                                                          \
        bench_clock()->real->op_ arguments;                                                                            \
        bench_count(BENCH_##op_, start);                                                                               \
    }
BENCH_OPS(X)
#undef X

static inline double bench_timed_square_sum(Device *d, const Floats *x, size_t n) {
    const double start = clock_seconds(), sum = bench_clock()->real->square_sum(d, x, n);
    bench_count(BENCH_square_sum, start);
    return sum;
}

static inline const Backend *bench_backend(const Backend *real) {
    BenchClock *c = bench_clock();
    *c = (BenchClock){.real = real, .timed = *real};
#define X(op_, parameters, arguments)                                                                                  \
    if (real->op_) c->timed.op_ = bench_timed_##op_;                                                                   \
    c->op[BENCH_##op_].name = #op_;
    BENCH_OPS(X)
#undef X
    c->timed.square_sum = bench_timed_square_sum;
    c->op[BENCH_square_sum].name = "square_sum";
    return &c->timed;
}

static inline void bench_split_reset(void) {
    BenchClock *c = bench_clock();
    for (int i = 0; i < BENCH_OP_COUNT; i++) {
        c->op[i].seconds = 0;
        c->op[i].calls = 0;
    }
}

/* Prints how the time of `steps` steps, `seconds` in all, divides into operations: one line each, the costliest
 * first. */
static inline void bench_split(FILE *f, int64_t steps, double seconds) {
    BenchOp op[BENCH_OP_COUNT];
    memcpy(op, bench_clock()->op, sizeof op);
    double sum = 0;
    fprintf(f, "%-28s %8s %10s %7s\n", "operation", "calls", "ms/step", "share");
    for (int i = 0; i < BENCH_OP_COUNT; i++) {
        int most = i;
        for (int j = i + 1; j < BENCH_OP_COUNT; j++)
            if (op[j].seconds > op[most].seconds) most = j;
        const BenchOp held = op[i];
        op[i] = op[most];
        op[most] = held;
        sum += op[i].seconds;
        if (op[i].calls)
            fprintf(f, "%-28s %8.1f %10.3f %6.1f%%\n", op[i].name, (double)op[i].calls / (double)steps,
                    1e3 * op[i].seconds / (double)steps, 100 * op[i].seconds / seconds);
    }
    fprintf(f, "%-28s %8s %10.3f %6.1f%%\n", "between operations", "", 1e3 * (seconds - sum) / (double)steps,
            100 * (seconds - sum) / seconds);
}

/* ---- processor time, medians and random data -------------------------------------------------------------------- */

/* Seconds of processor time that all threads have used. */
static inline double bench_processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline int bench_by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Returns the median of n values, which are sorted in place. */
static inline double bench_median(double *value, int64_t n) {
    qsort(value, (size_t)n, sizeof *value, bench_by_value);
    return n % 2 ? value[n / 2] : 0.5 * (value[n / 2 - 1] + value[n / 2]);
}

/* Returns n floats, uniform in (-scale, scale). */
static inline float *bench_floats(size_t n, float scale, uint64_t stream) {
    float *x = (float *)checked(aligned_alloc(64, (n * sizeof *x + 127) / 64 * 64), n * sizeof *x);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) x[i] = scale * (2 * random_uniform(1, stream, i) - 1);
    return x;
}

#endif
