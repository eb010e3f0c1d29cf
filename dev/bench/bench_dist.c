/* bench_dist.c - benchmark of data-parallel training: gradient sums by size, and a step on W ranks with its predicted
 * cost.
 *
 *     make llmc_mpi.so build/bench_dist
 *     export OMP_NUM_THREADS=1 LLMC_MPI_LIBRARY=./llmc_mpi.so
 *     build/bench_dist                                             one rank: the reference
 *     mpirun -n 2 build/bench_dist --flops 60 [--zero 1]           --flops: the GFLOP/s printed by the first command
 *
 * The step measures strong scaling: --batch sequences are distributed over the ranks. One line of JSON goes to standard
 * output. The prediction is that of cost_model.h.
 */
#include "../../llmc/dist/grads.h"
#include "../../llmc/base/options.h"
#include "../../llmc/model/decode.h"
#include "../../llmc/model/pack.h"
#include "bench.h"
#include "../cost_model.h"

static struct {
    int64_t layers, heads, width, vocab, batch, length, steps, zero;
    double flops;
} o;

static const Option options[] = {
    OPTION_GROUP("Model"),
    OPTION_INT("layers", 0, &o.layers, 1, 1024, "number of layers"),
    OPTION_INT("heads", 0, &o.heads, 1, 1024, "attention heads"),
    OPTION_INT("width", 0, &o.width, 1, 65536, "channels"),
    OPTION_INT("vocab", 0, &o.vocab, 1, 1 << 22, "vocabulary size"),
    OPTION_GROUP("Step"),
    OPTION_INT("batch", 0, &o.batch, 1, 65536, "sequences per step, on all ranks together"),
    OPTION_INT("length", 0, &o.length, 2, 1 << 20, "tokens per sequence"),
    OPTION_INT("steps", 0, &o.steps, 1, 10000, "timed steps"),
    OPTION_INT("zero", 0, &o.zero, 0, 2, "ZeRO level: distribute the optimizer state (1), also the gradients (2)"),
    OPTION_REAL("flops", 0, &o.flops, 0, 1e9, "GFLOP/s of a single rank, for the prediction; 0 disables it"),
    OPTION_END};

static const OptionAbout about = {"[options]", "Times sums over ranks and data-parallel training steps."};

/* Returns the shortest time of several all-reduces of n floats, in seconds. */
static double time_sum(Dist *d, Device *device, size_t n) {
    Error e;
    const Backend *b = backend_cpu();
    const DistPiece piece = {.x = b->alloc(device, n * sizeof(float), "floats to sum", &e), .n = n};
    double best = INFINITY;
    if (!piece.x) die("%s", e.text);
    b->zero(device, piece.x, n * sizeof(float));
    for (int i = 0; i < 6; i++) {
        dist_any(d, false); /* a barrier */
        const double start = clock_seconds();
        if (!d->device.link->reduce(d->device.state, &piece, 1, true, &e) ||
            !d->device.link->finish(d->device.state, 0, &e))
            dist_failed(d, &e);
        best = fmin(best, clock_seconds() - start);
    }
    dist_max(d, &best, 1);
    b->release(device, piece.x);
    return best;
}

/* Measures the bytes/s that a rank sends in large sums and the latency of a small sum. */
static void measure_link(Dist *d, Device *device, CostMachine *m) {
    for (size_t n = 1 << 8; n <= 1 << 24; n *= 16) {
        const double seconds = time_sum(d, device, n);
        const double bytes = 2.0 * (d->ranks - 1) / d->ranks * (double)n * sizeof(float);
        if (n == 1 << 8) m->latency = seconds;
        m->bandwidth = bytes / seconds; /* the largest sum counts: gradients are large */
        if (d->rank == 0)
            fprintf(stderr, "sum of %8zu floats   %9.3f ms   %6.2f GB/s sent per rank\n", n, 1e3 * seconds,
                    bytes / seconds * 1e-9);
    }
}

int main(int argc, char **argv) {
    o.layers = 6;
    o.heads = 8;
    o.width = 512;
    o.vocab = 8192;
    o.batch = 16;
    o.length = 64;
    o.steps = 8;
    options_parse_all(options, &about, argc, argv);
    Error e;
    Device *device;
    const Backend *b = backend_cpu();
    Dist d;
    CostMachine machine = {.overlap = 1, .weight_bytes = 4};
    if (!b->open(&device, DTYPE_FLOAT32, &e) || !dist_open(&d, 60, b, device, &e)) die("%s", e.text);
    if (d.ranks > 1) measure_link(&d, device, &machine);

    const ModelConfig c = gpt2_config((int)o.layers, (int)o.heads, (int)o.width, (int)o.vocab, (int)o.length);
    Model m;
    Optimizer optimizer;
    Workspace w;
    DistGrads g;
    const int mine = (int)((o.batch + d.ranks - 1 - d.rank) / d.ranks), N = mine * (int)o.length;
    if (!model_config_check(&c, "model", &e) || !model_new(&m, &c, b, device, false, &e)) die("%s", e.text);
    m.share = (Share){d.rank, d.ranks, (int)o.zero};
    if (!mine || !model_new_grads(&m, &e)) die("%s", mine ? e.text : "--batch must be at least the number of ranks");
    model_init(&m, 1);
    if (!optimizer_new(&optimizer, &m, &e) || !workspace_new(&w, &m, N, N, mine, true, 0, &e)) die("%s", e.text);
    dist_grads_open(&g, &d, &m, &optimizer, false);
    Batch batch = batch_new(N, N, mine);
    Random random = random_start(1, (uint64_t)d.rank);
    int32_t *tokens = (int32_t *)xmalloc((size_t)o.length * sizeof *tokens);
    for (int s = 0; s < mine; s++) {
        for (int i = 0; i < o.length; i++) tokens[i] = (int32_t)random_below(&random, (uint64_t)o.vocab);
        batch_sequence(&batch, tokens, NULL, (int)o.length);
    }
    float *dlogp = (float *)xcalloc((size_t)N, sizeof *dlogp);
    for (int i = 0; i < batch.targets; i++) dlogp[i] = (float)(-1.0 / (double)(o.batch * (o.length - 1)));

    double *seconds = (double *)xcalloc((size_t)o.steps, sizeof *seconds), waited = 0;
    uint64_t sent = 0;
    for (int64_t step = -1; step < o.steps; step++) {
        dist_any(&d, false);
        const double start = clock_seconds();
        if (step == 0) {
            waited = d.waited;
            sent = d.ranks > 1 ? d.device.link->bytes_sent(d.device.state) : 0;
        }
        dist_grads_begin(&g, 1);
        model_forward_backward(&m, &w, &batch, 1, dlogp, &(ModelOutput){0});
        dist_grads_update(&g, 1e-4);
        if (step >= 0) seconds[step] = clock_seconds() - start;
    }
    waited = (d.waited - waited) / (double)o.steps;
    if (d.ranks > 1) sent = (d.device.link->bytes_sent(d.device.state) - sent) / (uint64_t)o.steps;
    const double median = bench_median(seconds, o.steps), all = (double)(o.batch * o.length);
    const double rate = 6 * (double)m.parameters * all / median * 1e-9;
    if (d.rank == 0) {
        fprintf(stderr, "%d ranks, zero %lld, %.1f M parameters: %.1f ms per step, %.0f tokens/s, %.1f GFLOP/s\n",
                d.ranks, (long long)o.zero, (double)m.parameters * 1e-6, 1e3 * median, all / median, rate);
        fprintf(stderr, "per step: %.1f ms of waiting for other ranks, %.1f MB sent\n", 1e3 * waited,
                (double)sent * 1e-6);
        machine.flops = o.flops * 1e9;
        const CostRun run = cost_run(&c, all, 1, d.ranks, (int)o.zero);
        const CostStep whole = cost_step(&machine, &run);
        machine.overlap = 0;
        const CostStep turns = cost_step(&machine, &run);
        if (o.flops > 0 && d.ranks > 1)
            fprintf(stderr,
                    "predicted per step: %.1f ms if all sums of layers are hidden, %.1f ms if none is; %.1f MB sent\n",
                    1e3 * whole.step, 1e3 * turns.step, whole.bytes * 1e-6);
        printf(
            "{\"ranks\": %d, \"zero\": %lld, \"parameters\": %zu, \"seconds_per_step\": %.4f, \"tokens_per_second\": %.0f, "
            "\"gflops\": %.1f, \"waited\": %.4f, \"bytes_sent\": %llu, \"bandwidth\": %.3g, \"predicted_hidden\": %.4f, "
            "\"predicted_in_turn\": %.4f}\n",
            d.ranks, (long long)o.zero, m.parameters, median, all / median, rate, waited, (unsigned long long)sent,
            machine.bandwidth, o.flops > 0 ? whole.step : 0, o.flops > 0 ? turns.step : 0);
    }
    free(tokens), free(dlogp), free(seconds), batch_free(&batch);
    dist_grads_close(&g), workspace_free(&w, &m), optimizer_free(&optimizer, &m), model_free(&m);
    dist_close(&d), b->close(device);
    return 0;
}
