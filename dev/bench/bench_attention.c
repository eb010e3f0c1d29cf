/* bench_attention.c - benchmark of the CPU's attention by shape, relative to the ceilings of this machine.
 *
 *     make build/bench_attention && build/bench_attention [--dtype bf16] [--match NAME] [--seconds S]
 *
 * Each shape whose name contains NAME runs for S seconds. OMP_NUM_THREADS sets the number of threads.
 *
 * Training shapes: GFLOP/s of the forward pass (4 D per visible query-key pair and head) and of the backward pass (10
 * D: five products, with recomputed scores), also as percentages of the measured fused multiply-add peak. Decode
 * shapes: GB/s of distinct keys and values, also as a percentage of the measured read bandwidth. They cycle through the
 * KV caches of several layers, so that the data does not stay in the processor's caches. */
#include "../../llmc/base/clock.h"    /* clock_seconds */
#include "../../llmc/base/error.h"    /* Error, die */
#include "../../llmc/base/half.h"     /* half_to_bf16 */
#include "../../llmc/base/options.h"  /* OPTION_CHOICE, OPTION_END, OPTION_REAL, OPTION_TEXT, ... */
#include "../../llmc/cpu/cpu.h"       /* backend_cpu_for */
#include "../../llmc/model/backend.h" /* Attention, Backend, Device, acts_at, ... */
#include "../../llmc/model/batch.h"   /* Segment */
#include "bench.h"                    /* bench_floats, bench_peak, bench_read_bandwidth */

static struct {
    int dtype;
    const char *match;
    double seconds;
} o = {.match = "", .seconds = 0.4};

static const Option options[] = {
    OPTION_CHOICE("dtype", 0, &o.dtype, "float32|bf16", "type of activations and arithmetic"),
    OPTION_TEXT("match", 0, &o.match, "NAME", "only shapes whose names contain NAME"),
    OPTION_REAL("seconds", 0, &o.seconds, 0.001, 100, "time for each shape"), OPTION_END};
static const OptionAbout about = {"[options]", "Times attention in training and in decode, shape by shape."};

static const Backend *B;
static Device *D;

/* n activations, normally distributed. */
static Acts *random_acts(size_t n, uint64_t seed) {
    float *x = bench_floats(n, 1, seed);
    for (size_t i = 0; i < (o.dtype ? n : 0); i++) {
        const uint16_t half = half_to_bf16(x[i]);
        memcpy((char *)x + i * sizeof half, &half, sizeof half); /* before the floats that are still to be read */
    }
    return (Acts *)(void *)x;
}

/* Calls `run` for `seconds` seconds, at least 3 times, and returns the shortest time per layer. */
static double shortest(void (*run)(Device *, const Attention *), Attention *a, int layers, size_t layer,
                       double seconds) {
    double best = INFINITY;
    const Attention first = *a;
    const double end = clock_seconds() + seconds;
    for (int i = 0; i < 3 || clock_seconds() < end; i++) {
        const double start = clock_seconds();
        for (int l = 0; l < layers; l++) {
            run(D, a);
            a->k = acts_at(B, a->k, layer);
            a->v = acts_at(B, a->v, layer);
        }
        const double t = (clock_seconds() - start) / layers;
        if (t < best) best = t;
        *a = first;
    }
    return best;
}

typedef struct Shape {
    const char *what;
    int families, prompt, answers, answer, heads, kv_heads, size;
} Shape;

static void bench_training(const Shape *s, double peak, double seconds) {
    static Segment segment[4096];
    int n = 0, rows = 0;
    double pairs = 0;
    for (int f = 0; f < s->families; f++) {
        const int prompt = rows;
        segment[n++] = (Segment){rows, s->prompt, 0, 0, rows, 0};
        rows += s->prompt;
        pairs += 0.5 * s->prompt * (s->prompt + 1);
        for (int i = 0; i < s->answers; i++) {
            segment[n++] = (Segment){rows, s->answer, prompt, s->prompt, rows, 0};
            rows += s->answer;
            pairs += (double)s->answer * s->prompt + 0.5 * s->answer * (s->answer + 1);
        }
    }
    pairs *= s->heads;
    const size_t q_width = (size_t)s->heads * s->size, kv_width = (size_t)s->kv_heads * s->size,
                 width = q_width + 2 * kv_width;
    Acts *qkv = random_acts(rows * width, 1), *dqkv = random_acts(rows * width, 2);
    Acts *dout = random_acts(rows * q_width, 3), *out = random_acts(rows * q_width, 4);
    float *lse = bench_floats((size_t)rows * s->heads, 1, 5);
    Attention a = {.rows = rows,
                   .segments = n,
                   .heads = s->heads,
                   .kv_heads = s->kv_heads,
                   .head_size = s->size,
                   .q_stride = (int)width,
                   .kv_stride = (int)width,
                   .scale = 1 / sqrtf((float)s->size),
                   .segment = (const Ints *)segment,
                   .q = qkv,
                   .k = acts_at(B, qkv, q_width),
                   .v = acts_at(B, qkv, q_width + kv_width),
                   .out = out,
                   .lse = (Floats *)lse,
                   .dout = dout,
                   .dq = dqkv,
                   .dk = acts_at(B, dqkv, q_width),
                   .dv = acts_at(B, dqkv, q_width + kv_width)};
    const double forward = shortest(B->attention_forward, &a, 1, 0, seconds / 2);
    const double backward = shortest(B->attention_backward, &a, 1, 0, seconds / 2);
    const double f = 4 * s->size * pairs / forward * 1e-9, b = 10 * s->size * pairs / backward * 1e-9;
    fprintf(stderr, "%-44s %6d %3d/%-3d %4d %9.3f ms %6.1f %3.0f %% %9.3f ms %6.1f %3.0f %%\n", s->what, rows, s->heads,
            s->kv_heads, s->size, forward * 1e3, f, 100 * f / peak, backward * 1e3, b, 100 * b / peak);
    free(qkv), free(dqkv), free(dout), free(out), free(lse);
}

/* Decodes one token for each of families * answers sequences. The sequences of a family share the keys of their
 * prompt. */
static void bench_decode(const Shape *s, double bandwidth, double seconds) {
    static Segment segment[4096];
    int n = 0, keys = 0;
    for (int f = 0; f < s->families; f++) {
        const int prompt = keys;
        keys += s->prompt;
        for (int i = 0; i < s->answers; i++, n++) {
            segment[n] = (Segment){n, 1, prompt, s->prompt, keys, s->answer - 1};
            keys += s->answer;
        }
    }
    const size_t q_width = (size_t)s->heads * s->size, kv_width = (size_t)s->kv_heads * s->size,
                 layer = keys * kv_width;
    const int layers = (int)(((size_t)64 << 20) / layer) + 1;
    Acts *q = random_acts(n * q_width, 1), *k = random_acts(layers * layer, 2), *v = random_acts(layers * layer, 3);
    Acts *out = random_acts(n * q_width, 4);
    Attention a = {.rows = n,
                   .segments = n,
                   .heads = s->heads,
                   .kv_heads = s->kv_heads,
                   .head_size = s->size,
                   .q_stride = (int)q_width,
                   .kv_stride = (int)kv_width,
                   .scale = 1 / sqrtf((float)s->size),
                   .segment = (const Ints *)segment,
                   .q = q,
                   .k = k,
                   .v = v,
                   .out = out};
    const double t = shortest(B->attention_forward, &a, layers, layer, seconds);
    const double bytes = 2.0 * (double)layer * (double)B->act_size, rate = bytes / t * 1e-9;
    const double cached = shortest(B->attention_forward, &a, 1, 0, seconds / 4);
    fprintf(stderr, "%-44s %6d %3d/%-3d %4d %9.3f ms %6.1f GB/s %3.0f %% %6.1f MB, from cache %6.1f GB/s\n", s->what, n,
            s->heads, s->kv_heads, s->size, t * 1e3, rate, 100 * rate / bandwidth, 1e-6 * bytes, 1e-9 * bytes / cached);
    free(q), free(k), free(v), free(out);
}

int main(int argc, char **argv) {
    Error e;
    options_parse_all(options, &about, argc, argv);
    const Dtype dtype = o.dtype ? DTYPE_BF16 : DTYPE_FLOAT32;
    B = backend_cpu_for(dtype);
    if (!B->open(&D, dtype, &e)) die("%s", e.text);
    const double peak = bench_peak(dtype), bandwidth = bench_read_bandwidth();
    fprintf(stderr, "%d threads, peak %.0f GFLOP/s %s, %.1f GB/s read\n\n", omp_get_max_threads(), peak,
            o.dtype ? "bf16" : "float32", bandwidth);
    static const Shape training[] = {
        {"4 x 256", 4, 256, 0, 0, 12, 12, 64},
        {"2 x 512", 2, 512, 0, 0, 12, 12, 64},
        {"1 x 1024", 1, 1024, 0, 0, 12, 12, 64},
        {"16 x 64", 16, 64, 0, 0, 12, 12, 64},
        {"64 x 20 (short chats)", 64, 20, 0, 0, 6, 6, 64},
        {"8 x (128 shared + 8 x 64) (GRPO)", 8, 128, 8, 64, 6, 6, 64},
        {"16 x (12 shared + 16 x 8) (short answers)", 16, 12, 16, 8, 4, 4, 32},
        {"4 x 256, grouped heads", 4, 256, 0, 0, 9, 3, 64},
        {"4 x 256, wide heads", 4, 256, 0, 0, 6, 6, 128},
        {"4 x 256, heads of 80", 4, 256, 0, 0, 12, 12, 80},
        {"4 x 256, narrow heads", 4, 256, 0, 0, 12, 12, 24},
    };
    fprintf(stderr, "%-44s %6s %7s %4s %12s %13s %11s %13s\n", "training", "rows", "heads", "size", "forward",
            "GFLOP/s", "backward", "GFLOP/s");
    for (size_t i = 0; i < sizeof training / sizeof *training; i++)
        if (strstr(training[i].what, o.match)) bench_training(&training[i], peak, o.seconds);
    static const Shape decode[] = {
        {"32 sequences, 300 keys", 32, 0, 1, 300, 12, 12, 64},
        {"1 sequence, 1000 keys", 1, 0, 1, 1000, 12, 12, 64},
        {"4 x 8 sequences, 200 shared + 60 keys", 4, 200, 8, 60, 12, 12, 64},
        {"8 x 8 sequences, 32 shared + 32 keys", 8, 32, 8, 32, 6, 6, 64},
        {"2 x 16 sequences, 512 shared + 20 keys", 2, 512, 16, 20, 12, 12, 64},
        {"32 sequences, 300 keys, grouped heads", 32, 0, 1, 300, 9, 3, 64},
        {"64 sequences, 60 keys, narrow heads", 64, 0, 1, 60, 4, 4, 32},
    };
    fprintf(stderr, "\n%-44s %6s %7s %4s %12s\n", "decode", "rows", "heads", "size", "per layer");
    for (size_t i = 0; i < sizeof decode / sizeof *decode; i++)
        if (strstr(decode[i].what, o.match)) bench_decode(&decode[i], bandwidth, o.seconds);
    B->close(D);
    return 0;
}
