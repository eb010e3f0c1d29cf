/* bench_train.c - benchmark of a training step: forward, backward, clipping, AdamW.
 *
 *     make build/bench_train && build/bench_train [--model smollm2-135m] [--lora-rank 16] [--dtype bf16]
 *
 * It packs 4 sequences of 256 random tokens in one batch, trains random weights and reports the median of the steps
 * after the first, and the time of each operation; dev/peers/peer_train.py does the same in PyTorch. FLOP of GPT-2 are
 * 6 N per token, where N counts all parameters with the padded vocabulary, plus attention's 12 C per layer and visible
 * query-key pair; of other models, those of model_flops(). The share refers to the arithmetic peak of the processor
 * (llmc/cpu/peak.h). The last line, on
 * standard output, is JSON.
 */
#include "../../llmc/base/clock.h"        /* clock_seconds */
#include "../../llmc/base/error.h"        /* die, xmalloc, Error */
#include "../../llmc/base/options.h"      /* OPTION_INT, OPTION_CHOICE, OPTION_END, Option, ... */
#include "../../llmc/base/program.h"      /* program_peak_memory */
#include "../../llmc/base/random.h"       /* Random, random_below, random_start */
#include "../../llmc/cpu/cpu.h"           /* backend_cpu_for */
#include "../../llmc/model/backend.h"     /* DTYPE_BF16, DTYPE_FLOAT32, Backend, Device */
#include "../../llmc/model/batch.h"       /* Batch */
#include "../../llmc/model/config.h"      /* LORA_ALL, LoraConfig, ModelConfig, model_config_check */
#include "../../llmc/model/model.h"       /* Model, model_free, model_init, model_new, ... */
#include "../../llmc/model/optimizer.h"   /* Optimizer, OptimizerResult, optimizer_free, optimizer_new, ... */
#include "../../llmc/model/pack.h"        /* batch_free, batch_new, batch_sequence */
#include "../../llmc/model/transformer.h" /* ModelOutput, model_flops, model_forward_backward */
#include "../../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "../shapes.h"                    /* SHAPE_CHOICES, SHAPE_gpt2_124m, SHAPE_gpt2_1558m, shape_config */
#include "bench.h"                        /* bench_backend, bench_median, bench_peak, bench_split, ... */

static struct {
    int64_t batch, length, steps, recompute, rank;
    int dtype, model;
} o = {.batch = 4, .length = 256, .steps = 5};

static const Option options[] = {
    OPTION_CHOICE("model", 0, &o.model, SHAPE_CHOICES, "shape of the model"),
    OPTION_INT("lora-rank", 0, &o.rank, 0, 1024, "train adapters of this rank; 0 trains all weights"),
    OPTION_CHOICE("dtype", 0, &o.dtype, "float32|bf16", "arithmetic type"),
    OPTION_INT("recompute", 0, &o.recompute, 0, 2, "recomputation level: 1 layernorm and GELU outputs, 2 whole layers"),
    OPTION_INT("steps", 0, &o.steps, 1, 100000, "timed steps, after one untimed step"),
    OPTION_INT("batch", 0, &o.batch, 1, 4096, "sequences per step"),
    OPTION_INT("length", 0, &o.length, 2, 4096, "tokens per sequence"),
    OPTION_END};
static const OptionAbout about = {"[options]",
                                  "Times a training step of a model with random weights, in total and by operation."};

int main(int argc, char **argv) {
    Error e;
    Device *d;
    options_parse_all(options, &about, argc, argv);
    const double fma = 1e9 * bench_peak(o.dtype ? DTYPE_BF16 : DTYPE_FLOAT32);
    const Backend *b = bench_backend(backend_cpu_for(o.dtype ? DTYPE_BF16 : DTYPE_FLOAT32));
    if (!b->open(&d, o.dtype ? DTYPE_BF16 : DTYPE_FLOAT32, &e)) die("%s", e.text);

    ModelConfig c = shape_config(o.model, o.length > 1024 ? (int)o.length : 1024);
    if (o.rank) c.lora = (LoraConfig){.rank = (int)o.rank, .targets = LORA_ALL, .scale = 32.0f / (float)o.rank};
    Model m;
    Optimizer optimizer;
    Workspace w;
    if (!model_config_check(&c, "model", &e)) die("%s", e.text);
    const int N = (int)(o.batch * o.length);
    if (!model_new(&m, &c, b, d, true, &e)) die("%s", e.text);
    model_init(&m, 1);
    if (!optimizer_new(&optimizer, &m, &e) || !workspace_new(&w, &m, N, N, (int)o.batch, true, (int)o.recompute, &e))
        die("%s", e.text);
    Batch batch = batch_new(N, N, (int)o.batch);
    Random random = random_start(1, 5);
    int32_t *tokens = (int32_t *)xmalloc((size_t)o.length * sizeof *tokens);
    double pairs = 0;
    for (int s = 0; s < o.batch; s++) {
        for (int i = 0; i < o.length; i++) tokens[i] = (int32_t)random_below(&random, (uint64_t)c.vocab);
        batch_sequence(&batch, tokens, NULL, (int)o.length);
        pairs += 0.5 * (double)o.length * (double)(o.length + 1);
    }
    float *dlogp = (float *)xmalloc((size_t)N * sizeof *dlogp), *logp = (float *)xmalloc((size_t)N * sizeof *logp);
    for (int i = 0; i < batch.targets; i++) dlogp[i] = -1.0f / (float)batch.targets;

    double flops = model_flops(&c, N, batch.targets, pairs, 3);
    if (o.model == SHAPE_gpt2_124m || o.model == SHAPE_gpt2_1558m)
        flops = 6.0 * (double)m.parameters * N + 12.0 * (double)c.width * (double)c.layers * pairs;
    double *seconds = (double *)xmalloc((size_t)o.steps * sizeof *seconds), total = 0;
    for (int64_t step = -1; step < o.steps; step++) {
        const double start = clock_seconds();
        const ModelOutput out = {.logp = logp};
        model_forward_backward(&m, &w, &batch, 1, dlogp, &out);
        const OptimizerResult r = optimizer_step(&optimizer, &m, 1e-4);
        if (!model_sync(&m, &e)) die("%s", e.text);
        const double t = clock_seconds() - start;
        double loss = 0;
        for (int i = 0; i < batch.targets; i++) loss -= (double)logp[i] / batch.targets;
        fprintf(stderr, "step %lld%s  %.3f s  loss %.4f  norm %.3f\n", (long long)step + 1,
                step < 0 ? " (not counted)" : "", t, loss, r.grad_norm);
        if (step < 0) bench_split_reset();
        else {
            seconds[step] = t;
            total += t;
        }
    }
    fputc('\n', stderr);
    bench_split(stderr, o.steps, total);
    const double median = bench_median(seconds, o.steps), rate = flops / median;
    fprintf(
        stderr,
        "\n%.3f s per step, %.0f tokens/s, %.1f GFLOP/s: %.1f %% of the arithmetic peak of %.0f\nmemory: activations %.0f MiB, packed weights and scratch %.0f MiB\n",
        median, N / median, rate * 1e-9, 100 * rate / fma, fma * 1e-9, (double)w.bytes / 1048576,
        (double)b->scratch_bytes(d) / 1048576);
    printf("{\"dtype\": \"%s\", \"threads\": %d, \"batch\": %lld, \"length\": %lld, \"recompute\": %lld, "
           "\"parameters\": %zu, \"seconds_per_step\": %.4f, \"tokens_per_second\": %.1f, \"gflops\": %.1f, "
           "\"share_of_peak\": %.3f, \"peak_rss_mib\": %zu}\n",
           o.dtype ? "bf16" : "float32", omp_get_max_threads(), (long long)o.batch, (long long)o.length,
           (long long)o.recompute, m.parameters, median, N / median, rate * 1e-9, rate / fma,
           program_peak_memory() >> 20);

    free(tokens), free(dlogp), free(logp), free(seconds), batch_free(&batch);
    workspace_free(&w, &m), optimizer_free(&optimizer, &m), model_free(&m), b->close(d);
    return 0;
}
