/* bench_decode.c - benchmark of sampling: 32 sequences of 32 prompt and 64 new tokens, then one alone.
 *
 *     make build/bench_decode && build/bench_decode [--model smollm2-135m] [--dtype bf16] [--no-single]
 *
 * It runs random weights and different random prompts through the rollout engine (llmc/rollout/rollout.h);
 * dev/peers/peer_generate.py does the same in transformers. The speed is compared with two lower bounds of the time.
 * Memory: each step reads every weight it uses once, at the read bandwidth. Arithmetic: 2 N FLOP per token, prompts
 * included, at the rate of the processor's multiply-adds. The batch size decides which bound is tighter. The last line,
 * on standard output, is JSON.
 */
#include "../../llmc/base/clock.h"      /* clock_seconds */
#include "../../llmc/base/error.h"      /* die, Error, xcalloc, xmalloc, ... */
#include "../../llmc/base/options.h"    /* OPTION_INT, OPTION_CHOICE, OPTION_END, OPTION_FLAG, ... */
#include "../../llmc/base/program.h"    /* program_peak_memory */
#include "../../llmc/base/random.h"     /* Random, random_below, random_start */
#include "../../llmc/cpu/cpu.h"         /* backend_cpu_for */
#include "../../llmc/model/backend.h"   /* DTYPE_BF16, DTYPE_FLOAT32, Backend, Device, ... */
#include "../../llmc/model/config.h"    /* ModelConfig, LORA_ALL, LoraConfig, model_config_check */
#include "../../llmc/model/model.h"     /* Model, model_free, model_init, model_new_quantized, ... */
#include "../../llmc/model/tensors.h"   /* MATRIX_COUNT, TENSOR_wpe, TENSOR_wte, matrix_tensor */
#include "../../llmc/rollout/rollout.h" /* RolloutRequest, Completion, Rollout, Sampling, ... */
#include "../shapes.h"                  /* SHAPE_CHOICES, shape_config */
#include "bench.h"                      /* bench_backend, bench_median, bench_peak, bench_read_bandwidth, ... */

static struct {
    int64_t sequences, prompt, fresh, runs, rank;
    int dtype, model, quantize;
    bool single;
} o = {.sequences = 32, .prompt = 32, .fresh = 64, .runs = 3, .single = true};

static const Option options[] = {
    OPTION_CHOICE("model", 0, &o.model, SHAPE_CHOICES, "shape of the model"),
    OPTION_INT("lora-rank", 0, &o.rank, 0, 1024, "adapters of this rank; 0: none"),
    OPTION_CHOICE("dtype", 0, &o.dtype, "float32|bf16", "arithmetic type"),
    OPTION_CHOICE("quantize", 0, &o.quantize, "none|q8_0|q4_0", "type of the matrices of linear layers"),
    OPTION_INT("sequences", 0, &o.sequences, 1, 4096, "sequences in parallel"),
    OPTION_INT("prompt", 0, &o.prompt, 1, 1024, "tokens per prompt"),
    OPTION_INT("new", 0, &o.fresh, 1, 1024, "tokens sampled per sequence"),
    OPTION_INT("runs", 0, &o.runs, 1, 1000, "timed runs, after one untimed run"),
    OPTION_FLAG("single", 0, &o.single, "also time a single sequence"),
    OPTION_END};
static const OptionAbout about = {"[options]",
                                  "Times sampling from a model with random weights, in total and by operation."};

/* Returns the median time of a run of n sequences with different prompts, in seconds, and the share of it that the
 * arithmetic would take at the peak. */
static double time_rollout(const Model *m, int n, double fma, double bandwidth, double *share) {
    Error e;
    Rollout r;
    const int P = (int)o.prompt, G = (int)o.fresh;
    Sampling how = sampling_default();
    how.max_new = G;
    if (!rollout_new(&r, m, n, P, G, &e)) die("%s", e.text);
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)n, sizeof *q);
    Completion *out = (Completion *)xcalloc((size_t)n, sizeof *out);
    int32_t *prompt = (int32_t *)xmalloc((size_t)(n * P) * sizeof *prompt);
    Random random = random_start(1, 6);
    for (int i = 0; i < n * P; i++) prompt[i] = (int32_t)random_below(&random, (uint64_t)m->config.vocab);
    for (int i = 0; i < n; i++)
        q[i] = (RolloutRequest){
            .prompt = prompt + i * P, .prompt_len = P, .samples = 1, .id = (uint64_t)i, .out = out + i};
    double *seconds = (double *)xmalloc((size_t)o.runs * sizeof *seconds), total = 0;
    int64_t steps = 0;
    for (int64_t run = -1; run < o.runs; run++) {
        const double start = clock_seconds();
        const int64_t before = r.steps;
        if (!rollout_run(&r, &how, q, n, NULL, NULL, &e)) die("%s", e.text);
        const double t = clock_seconds() - start;
        steps = r.steps - before;
        for (int i = 0; i < n; i++) completion_free(&out[i]);
        if (run < 0) bench_split_reset();
        else {
            seconds[run] = t;
            total += t;
        }
    }
    const double median = bench_median(seconds, o.runs);
    const ModelConfig *c = &m->config;
    const double weights =
        (double)(m->parameters - m->tensor[TENSOR_wpe].size - (c->tied ? 0 : m->tensor[TENSOR_wte].size));
    const double body = weights - (double)c->padded_vocab * c->width;
    /* bytes and elements of quantised matrices, without embeddings that are not the output matrix */
    double blocks = 0, block_bytes = (double)m->block_bytes;
    for (int i = 0; i < MATRIX_COUNT; i++)
        if (model_blocks_of(m, matrix_tensor[i], 0)) blocks += (double)m->tensor[matrix_tensor[i]].size;
    if (m->matrix && !c->tied) {
        blocks -= (double)m->tensor[TENSOR_wte].size;
        block_bytes -= (double)quant_part_bytes(model_blocks_of(m, TENSOR_wte, 0), 0, (size_t)c->width);
    }
    const double bytes = (weights - blocks) * (o.dtype ? 2 : 4) + block_bytes;
    const double memory = (double)steps * bytes / bandwidth;
    const double arithmetic = 2 * n * ((P + G - 1) * body + G * (weights - body)) / fma;
    fprintf(stderr, "\n%d sequence%s, %d + %d tokens, %lld model calls per run\n\n", n, n > 1 ? "s" : "", P, G,
            (long long)steps);
    bench_split(stderr, o.runs * steps, total);
    fprintf(
        stderr,
        "\n%.1f tokens/s, %.2f ms per call; lower bounds: memory %.2f ms (%.0f %% of the time), arithmetic %.2f ms (%.0f %%)\n",
        n * G / median, 1e3 * median / (double)steps, 1e3 * memory / (double)steps, 100 * memory / median,
        1e3 * arithmetic / (double)steps, 100 * arithmetic / median);
    *share = arithmetic / median;
    free(q), free(out), free(prompt), free(seconds), rollout_free(&r);
    return median;
}

int main(int argc, char **argv) {
    Error e;
    Device *d;
    Model m;
    options_parse_all(options, &about, argc, argv);
    if (o.prompt + o.fresh > 1024) usage_error("--prompt plus --new must be at most 1024");
    const double fma = 1e9 * bench_peak(o.dtype ? DTYPE_BF16 : DTYPE_FLOAT32), bandwidth = 1e9 * bench_read_bandwidth();
    fprintf(stderr, "%d threads, %s: %.0f GFLOP/s, %.1f GB/s read\n", omp_get_max_threads(),
            o.dtype ? "bf16" : "float32", fma * 1e-9, bandwidth * 1e-9);
    const Backend *b = bench_backend(backend_cpu_for(o.dtype ? DTYPE_BF16 : DTYPE_FLOAT32));
    if (!b->open(&d, o.dtype ? DTYPE_BF16 : DTYPE_FLOAT32, &e)) die("%s", e.text);
    ModelConfig c = shape_config(o.model, 1024);
    if (o.rank) c.lora = (LoraConfig){.rank = (int)o.rank, .targets = LORA_ALL, .scale = 32.0f / (float)o.rank};
    if (!model_config_check(&c, "model", &e)) die("%s", e.text);
    QuantMatrix *plan = o.quantize ? quant_plan(&c, o.quantize == 1 ? QUANT_Q8_0 : QUANT_Q4_0, &e) : NULL;
    if (o.quantize && !plan) die("%s", e.text);
    if (!model_new_quantized(&m, &c, plan, NULL, b, d, &e)) die("%s", e.text);
    model_init(&m, 1);
    double share, share_alone;
    const double seconds = time_rollout(&m, (int)o.sequences, fma, bandwidth, &share);
    const size_t peak = program_peak_memory();
    const double alone = o.single ? time_rollout(&m, 1, fma, bandwidth, &share_alone) : NAN;
    printf("{\"dtype\": \"%s\", \"threads\": %d, \"sequences\": %lld, \"prompt\": %lld, \"new\": %lld, "
           "\"parameters\": %zu, \"seconds\": %.3f, \"tokens_per_second\": %.1f, ",
           o.dtype ? "bf16" : "float32", omp_get_max_threads(), (long long)o.sequences, (long long)o.prompt,
           (long long)o.fresh, m.parameters, seconds, (double)(o.sequences * o.fresh) / seconds);
    if (o.single) printf("\"single_tokens_per_second\": %.1f, ", (double)o.fresh / alone);
    printf("\"share_of_peak\": %.3f, \"peak_rss_mib\": %zu}\n", share, peak >> 20);
    model_free(&m), b->close(d);
    return 0;
}
