/* bench_distill.c - benchmark of a step of distillation with exact divergences, beside its parts.
 *
 *     make build/bench_distill && build/bench_distill [--model gpt2-124m] [--teacher gpt2-124m] [--divergence jsd]
 *
 * Student and teacher have random weights. Each step measures three things one after the other, on the same batch: the forward
 * and backward pass of the student for the log-probabilities of the targets, the forward pass of the teacher for the same,
 * and the forward and backward pass of the divergence, which needs both. Reported are the medians of wall and processor time,
 * the ratio of the third to the sum of the others, and the memory that the backend has for logits and packed weights
 * before and after the first divergence. The last line, on standard output, is JSON.
 *
 * --variance N measures the noise of the two estimators of the reverse KL on the student's own samples instead. N times, a
 * batch of --batch completions of --length tokens is drawn from the student, and both gradients are computed on it: the exact
 * divergence at each token, and that of the sampled estimator, (log S - log T) grad log S of the drawn token. Both have the
 * same mean. The variance is the mean of |g - mean|^2, from the mean of |g|^2 and from products of gradients of different
 * batches, which estimate |mean|^2 without bias.
 */
#include "../../llmc/base/clock.h"        /* clock_seconds */
#include "../../llmc/base/error.h"        /* die, xmalloc, xcalloc, Error */
#include "../../llmc/base/options.h"      /* OPTION_CHOICE, OPTION_INT, OPTION_END, Option, ... */
#include "../../llmc/base/program.h"      /* program_peak_memory */
#include "../../llmc/base/random.h"       /* Random, random_below, random_start */
#include "../../llmc/cpu/cpu.h"           /* backend_cpu_for */
#include "../../llmc/model/backend.h"     /* Backend, Device, DTYPE_BF16, DTYPE_FLOAT32, ... */
#include "../../llmc/model/batch.h"       /* Batch */
#include "../../llmc/model/config.h"      /* ModelConfig, model_config_check */
#include "../../llmc/model/divergence.h"  /* ModelDivergence, DivergenceOutput, model_divergence_both, ... */
#include "../../llmc/model/model.h"       /* Model, model_free, model_sync, model_forget_grads, ... */
#include "../../llmc/model/pack.h"        /* batch_free, batch_sequence, batch_clear, batch_new */
#include "../../llmc/model/transformer.h" /* ModelOutput, model_forward_backward, model_forward */
#include "../../llmc/model/workspace.h"   /* workspace_free, Workspace, workspace_new */
#include "../../llmc/rollout/rollout.h"   /* Completion, Rollout, RolloutRequest, Sampling, ... */
#include "../shapes.h"                    /* shape_name, SHAPE_CHOICES, shape_config */
#include "bench.h"                        /* bench_processor_seconds, bench_median */

static struct {
    int64_t batch, length, steps, variance;
    int dtype, model, teacher, kind;
} o = {.batch = 4, .length = 256, .steps = 5};

static const Option options[] = {
    OPTION_CHOICE("model", 0, &o.model, SHAPE_CHOICES, "shape of the student"),
    OPTION_CHOICE("teacher", 0, &o.teacher, SHAPE_CHOICES, "shape of the teacher, with the same vocabulary"),
    OPTION_CHOICE("divergence", 0, &o.kind, TOKEN_DIVERGENCE_CHOICES, "what is computed of both distributions"),
    OPTION_CHOICE("dtype", 0, &o.dtype, "float32|bf16", "arithmetic type"),
    OPTION_INT("steps", 0, &o.steps, 1, 100000, "timed steps, after one untimed step"),
    OPTION_INT("batch", 0, &o.batch, 1, 4096, "sequences per step"),
    OPTION_INT("length", 0, &o.length, 2, 4096, "tokens per sequence"),
    OPTION_INT("variance", 0, &o.variance, 0, 100000,
               "measure the variance of gradients over N batches, at least 2; 0: time"),
    OPTION_END};
static const OptionAbout about = {
    "[options]", "Times a step of distillation between models with random weights, and the parts that it is made of."};

enum { PART_STUDENT, PART_TEACHER, PART_DIVERGENCE, PARTS };

/* Makes a model of a shape with random weights, and its workspace. */
static void new_model(Model *m, Workspace *w, int shape, const Backend *b, Device *d, bool train, int rows,
                      uint64_t seed) {
    Error e;
    const ModelConfig c = shape_config(shape, o.length > 1024 ? (int)o.length : 1024);
    if (!model_config_check(&c, shape_name(shape), &e) || !model_new(m, &c, b, d, train, &e)) die("%s", e.text);
    model_init(m, seed);
    if (!workspace_new(w, m, rows, rows, (int)o.batch, train, 0, &e)) die("%s", e.text);
}

/* ---- variance ---------------------------------------------------------------------------------------------------- */

/* Sums over gradients g of one estimator: |g|^2, and g itself. */
typedef struct GradientSums {
    double squares;
    float *sum; /* (parameters) */
} GradientSums;

static double dot(const float *a, const float *b, size_t n) {
    double sum = 0;
#pragma omp parallel for reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

/* Adds the model's gradient, and sets it to 0. The memory of the CPU's backend is the host's. */
static void take_gradient(Model *m, GradientSums *s) {
    model_settle_grads(m);
    const float *g = (const float *)(const void *)m->grads;
    s->squares += dot(g, g, m->grads_count);
    for (size_t i = 0; i < m->grads_count; i++) s->sum[i] += g[i];
    model_forget_grads(m);
}

/* Draws a batch of completions from the student. */
static void draw_batch(Rollout *engine, Batch *batch, int64_t number) {
    Error e;
    const int B = (int)o.batch;
    static const int32_t first = 0;
    Completion *out = (Completion *)xcalloc((size_t)B, sizeof *out);
    Sampling how = sampling_default();
    RolloutRequest request = {
        .prompt = &first, .prompt_len = 1, .samples = B, .id = (uint64_t)(number * B), .out = out};
    how.max_new = (int)o.length - 1;
    int32_t *tokens = (int32_t *)xcalloc((size_t)o.length, sizeof *tokens);
    if (!rollout_run(engine, &how, &request, 1, NULL, NULL, &e)) die("%s", e.text);
    batch_clear(batch);
    for (int i = 0; i < B; i++) {
        memcpy(tokens + 1, out[i].tokens, (size_t)out[i].count * sizeof *tokens);
        batch_sequence(batch, tokens, NULL, 1 + out[i].count);
        completion_free(&out[i]);
    }
    free(out), free(tokens);
}

static void measure_variance(Model *student, Workspace *w, ModelDivergence apart, Batch *batch) {
    Error e;
    Rollout engine;
    const double N = (double)o.variance;
    const int rows = batch->rows_max;
    GradientSums exact = {.sum = (float *)xcalloc(student->grads_count, sizeof(float))},
                 sampled = {.sum = (float *)xcalloc(student->grads_count, sizeof(float))};
    float *x = (float *)xcalloc(6 * (size_t)rows, sizeof *x), *logp = x, *value = x + rows, *weight = x + 2 * rows,
          *teacher = x + 3 * rows, *dlogp = x + 4 * rows, *kl = x + 5 * rows;
    const ModelOutput out = {.logp = logp};
    const DivergenceOutput all = {.value = value, .logp = teacher, .reverse_kl = kl};
    double mean = 0;
    apart.kind = TOKEN_REVERSE_KL;
    if (!rollout_new(&engine, student, (int)o.batch, 1, (int)o.length, &e)) die("%s", e.text);
    for (int64_t i = 0; i < o.variance; i++) {
        draw_batch(&engine, batch, i);
        for (int t = 0; t < batch->targets; t++) weight[t] = 1.0f / (float)batch->targets;
        model_divergence_both(student, w, batch, &apart, NULL, 1, weight, NULL, &out, &all);
        if (!model_sync(student, &e)) die("%s", e.text);
        take_gradient(student, &exact);
        for (int t = 0; t < batch->targets; t++) {
            dlogp[t] = (logp[t] - teacher[t]) / (float)batch->targets;
            mean += (double)value[t] / batch->targets / N;
        }
        model_forward_backward(student, w, batch, 1, dlogp, &out);
        if (!model_sync(student, &e)) die("%s", e.text);
        take_gradient(student, &sampled);
        fprintf(stderr, "\rbatch %lld of %lld", (long long)i + 1, (long long)o.variance);
    }
    const size_t n = student->grads_count;
    const double square = (dot(exact.sum, exact.sum, n) - exact.squares) / (N * (N - 1)),
                 cosine = dot(exact.sum, sampled.sum, n) /
                          sqrt(dot(exact.sum, exact.sum, n) * dot(sampled.sum, sampled.sum, n));
    const double a = exact.squares / N - square, b = sampled.squares / N - square;
    fprintf(
        stderr,
        "\rreverse KL %.4f nats per token; |mean gradient|^2 %.4g; variance: exact %.4g, sampled %.4g, ratio %.1f\n",
        mean, square, a, b, b / a);
    printf(
        "{\"batches\": %lld, \"kl\": %.5f, \"mean_square\": %.6g, \"variance_exact\": %.6g, \"variance_sampled\": %.6g, "
        "\"ratio\": %.3f, \"cosine_of_sums\": %.5f}\n",
        (long long)o.variance, mean, square, a, b, b / a, cosine);
    rollout_free(&engine);
    free(exact.sum), free(sampled.sum), free(x);
}

int main(int argc, char **argv) {
    Error e;
    Device *d;
    options_parse_all(options, &about, argc, argv);
    const Dtype dtype = o.dtype ? DTYPE_BF16 : DTYPE_FLOAT32;
    const Backend *b = backend_cpu_for(dtype);
    if (!b->open(&d, dtype, &e)) die("%s", e.text);
    const int N = (int)(o.batch * o.length);
    Model student, teacher;
    Workspace w, read;
    new_model(&student, &w, o.model, b, d, true, N, 1);
    new_model(&teacher, &read, o.teacher, b, d, false, N, 2);
    if (student.config.vocab != teacher.config.vocab)
        die("--teacher %s: its vocabulary has %d tokens, that of --model %s %d", shape_name(o.teacher),
            (int)teacher.config.vocab, shape_name(o.model), (int)student.config.vocab);

    Batch batch = batch_new(N, N, (int)o.batch);
    if (o.variance) {
        if (o.variance == 1) die("--variance 1: a variance needs at least 2 batches");
        measure_variance(&student, &w,
                         (ModelDivergence){.teacher = &teacher, .work = &read, .temperature = 1, .beta = 0.5f}, &batch);
        workspace_free(&w, &student), workspace_free(&read, &teacher), model_free(&student), model_free(&teacher);
        batch_free(&batch);
        b->close(d);
        return 0;
    }
    Random random = random_start(1, 5);
    int32_t *tokens = (int32_t *)xmalloc((size_t)o.length * sizeof *tokens);
    for (int s = 0; s < o.batch; s++) {
        for (int i = 0; i < o.length; i++) tokens[i] = (int32_t)random_below(&random, (uint64_t)student.config.vocab);
        batch_sequence(&batch, tokens, NULL, (int)o.length);
    }
    float *logp = (float *)xmalloc((size_t)N * sizeof *logp), *value = (float *)xmalloc((size_t)N * sizeof *value),
          *dlogp = (float *)xmalloc((size_t)N * sizeof *dlogp), *weight = (float *)xmalloc((size_t)N * sizeof *weight);
    for (int i = 0; i < batch.targets; i++) dlogp[i] = -(weight[i] = 1.0f / (float)batch.targets);
    const ModelDivergence apart = {
        .teacher = &teacher, .work = &read, .kind = (TokenDivergenceKind)o.kind, .temperature = 1, .beta = 0.5f};
    const DivergenceOutput all = {.value = value};
    const ModelOutput out = {.logp = logp};

    double *seconds[2][PARTS];
    size_t scratch[2] = {0, 0};
    for (int k = 0; k < 2 * PARTS; k++)
        seconds[k / PARTS][k % PARTS] = (double *)xmalloc((size_t)o.steps * sizeof(double));
    for (int64_t step = -1; step < o.steps; step++)
        for (int part = 0; part < PARTS; part++) {
            const double start = clock_seconds(), used = bench_processor_seconds();
            if (part == PART_STUDENT) model_forward_backward(&student, &w, &batch, 1, dlogp, &out);
            else if (part == PART_TEACHER) model_forward(&teacher, &read, &batch, 1, &out);
            else model_divergence_both(&student, &w, &batch, &apart, NULL, 1, weight, NULL, &out, &all);
            if (!model_sync(&student, &e)) die("%s", e.text);
            if (part != PART_STUDENT) scratch[part == PART_DIVERGENCE] = b->scratch_bytes(d);
            if (step < 0) continue;
            seconds[0][part][step] = clock_seconds() - start;
            seconds[1][part][step] = bench_processor_seconds() - used;
        }
    double t[2][PARTS];
    for (int k = 0; k < 2 * PARTS; k++) {
        t[k / PARTS][k % PARTS] = bench_median(seconds[k / PARTS][k % PARTS], o.steps);
        free(seconds[k / PARTS][k % PARTS]);
    }
    for (int k = 0; k < 2; k++)
        fprintf(stderr, "%s time of a step: student %.3f s, teacher %.3f s, divergence %.3f s: %.3f of their sum\n",
                k ? "processor" : "wall", t[k][PART_STUDENT], t[k][PART_TEACHER], t[k][PART_DIVERGENCE],
                t[k][PART_DIVERGENCE] / (t[k][PART_STUDENT] + t[k][PART_TEACHER]));
    fprintf(stderr, "scratch: %.1f MiB, with the divergence %.1f MiB; logits of all targets would take %.1f MiB\n",
            (double)scratch[0] / 1048576, (double)scratch[1] / 1048576,
            4.0 * batch.targets * student.config.padded_vocab / 1048576);
    printf("{\"student_s\": %.4f, \"teacher_s\": %.4f, \"divergence_s\": %.4f, \"ratio\": %.4f, \"scratch_mib\": %.1f, "
           "\"scratch_divergence_mib\": %.1f, \"peak_rss_mib\": %zu}\n",
           t[1][PART_STUDENT], t[1][PART_TEACHER], t[1][PART_DIVERGENCE],
           t[1][PART_DIVERGENCE] / (t[1][PART_STUDENT] + t[1][PART_TEACHER]), (double)scratch[0] / 1048576,
           (double)scratch[1] / 1048576, program_peak_memory() >> 20);

    free(tokens), free(dlogp), free(logp), free(weight), free(value), batch_free(&batch);
    workspace_free(&w, &student), workspace_free(&read, &teacher), model_free(&student), model_free(&teacher);
    b->close(d);
    return 0;
}
