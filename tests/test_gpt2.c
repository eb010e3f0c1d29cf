/* test_gpt2.c - the model against PyTorch's GPT2LMHeadModel (golden values: dev/golden/golden_gpt2.py), against finite
 * differences, and the equalities that packing, shared prefixes, recomputation and micro-batches must keep. */
#include "../llmc/base/error.h"        /* xmalloc, Error, xcalloc, error_set */
#include "../llmc/base/random.h"       /* Random, random_start, random_normal, random_below, ... */
#include "../llmc/cpu/cpu.h"           /* backend_cpu, backend_cpu_for */
#include "../llmc/model/backend.h"     /* Device, Backend, DTYPE_BF16, weights_at, ... */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/config.h"      /* ModelConfig, gpt2_config, gpt2_config_descriptor, model_config_check */
#include "../llmc/model/model.h"       /* Model, model_free, model_zero_grads, model_init, ... */
#include "../llmc/model/model_file.h"  /* model_load */
#include "../llmc/model/model_load.h"  /* ModelFile, model_file_free */
#include "../llmc/model/optimizer.h"   /* Optimizer, optimizer_free, optimizer_new, optimizer_step, ... */
#include "../llmc/model/pack.h"        /* batch_new, batch_sequence, batch_free, batch_segment, ... */
#include "../llmc/model/tensors.h"     /* TENSOR_COUNT, TensorInfo, TENSOR_headw, TENSOR_wte, ... */
#include "../llmc/model/transformer.h" /* ModelOutput, model_forward, model_backward, model_forward_backward, ... */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new, KVCache, ... */
#include "cpu_device.h"                /* B, D, close_device, open_device_one_thread */
#include "golden.h"                    /* golden, golden_count, golden_floats, golden_free, ... */
#include "variants.h"                  /* VARIANTS, variant_of */

/* ==== Fixtures ==== */

static Model random_model(ModelConfig c, uint64_t seed, double amplitude) {
    Error e;
    Model m;
    if (!model_new(&m, &c, B, D, true, &e)) fail_msg("%s", e.text);
    Random r = random_start(seed, 0);
    float *host = xmalloc(m.parameters * sizeof *host);
    for (size_t i = 0; i < m.parameters; i++) host[i] = (float)(amplitude * random_normal(&r));
    for (int i = 0; i < TENSOR_COUNT; i++) /* layernorm weights around 1 */
        if (m.tensor[i].init == INIT_ONE)
            for (size_t k = 0; k < m.tensor[i].size; k++) host[m.tensor[i].offset + k] += 1;
    B->weights_upload(D, m.weights, host, m.parameters);
    free(host);
    return m;
}

static ModelConfig small_config(int kv_heads, int value_head) {
    ModelConfig c = gpt2_config(2, 4, 24, 37, 20);
    c.kv_heads = kv_heads;
    if (kv_heads != 4) {
        c.head_size = 10; /* the heads have 40 channels, the width is 24 */
        c.tied = 0;
        c.mlp = kv_heads == 2 ? MLP_SWIGLU : MLP_GEGLU;
        c.attproj_bias = 0;
        c.mlp_bias = 0;
        c.qkv_bias = kv_heads == 2;
    }
    c.value_head = value_head;
    return c;
}

static ModelConfig variant_config(int variant, int value_head) {
    ModelConfig c = small_config(4, value_head);
    variant_of(&c, variant);
    return c;
}

static float *gradients(const Model *m) {
    float *g = xmalloc(m->parameters * sizeof *g);
    model_settle_grads(m);
    B->download(D, g, m->grads, m->parameters * sizeof *g);
    return g;
}

/* A batch and a loss over it: sum_r w logp + u entropy + q value. */
typedef struct Problem {
    Batch batch;
    float *w, *u, *q;
    float temperature;
} Problem;

static void problem_weights(Problem *p, uint64_t seed) {
    Random r = random_start(seed, 9);
    const size_t n = (size_t)p->batch.targets;
    p->w = xmalloc(n * sizeof(float));
    p->u = xmalloc(n * sizeof(float));
    p->q = xmalloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        p->w[i] = (float)random_normal(&r);
        p->u[i] = (float)(0.5 * random_normal(&r));
        p->q[i] = (float)random_normal(&r);
    }
}

static void problem_free(Problem *p) { batch_free(&p->batch), free(p->w), free(p->u), free(p->q); }

static void random_tokens(Random *r, int32_t *tokens, int n, int vocab) {
    for (int i = 0; i < n; i++) tokens[i] = (int32_t)random_below(r, (uint64_t)vocab);
}

/* Single sequences, and families of a prompt with answers, of various lengths; one answer has a single token. */
static Problem mixed_problem(uint64_t seed, int vocab) {
    Problem p = {.batch = batch_new(200, 200, 40), .temperature = 0.8f};
    Random r = random_start(seed, 1);
    int32_t t[32];
    for (int i = 0; i < 3; i++) {
        const int n = 2 + (int)random_below(&r, 12);
        random_tokens(&r, t, n, vocab);
        batch_sequence(&p.batch, t, NULL, n);
        random_tokens(&r, t, 6, vocab);
        const int prompt = batch_segment(&p.batch, t, 6, 0, -1);
        for (int k = 0; k < 3; k++) {
            random_tokens(&r, t, 10, vocab);
            batch_completion(&p.batch, prompt, t, NULL, k == 1 ? 1 : 3 + 2 * k + i);
        }
    }
    problem_weights(&p, seed);
    return p;
}

static Workspace train_workspace(const Model *m, const Batch *b, int recompute) {
    Error e;
    Workspace w;
    if (!workspace_new(&w, m, b->rows_max, b->targets_max, b->segments_max, true, recompute, &e))
        fail_msg("%s", e.text);
    return w;
}

/* The loss, summed in double over the model's outputs. */
static double loss_of(const Model *m, const Workspace *w, const Problem *p) {
    const size_t n = (size_t)p->batch.targets;
    float *logp = xcalloc(n, sizeof(float)), *entropy = xcalloc(n, sizeof(float)), *value = xcalloc(n, sizeof(float));
    const ModelOutput out = {.logp = logp, .entropy = entropy, .value = m->config.value_head ? value : NULL};
    model_forward(m, w, &p->batch, p->temperature, &out);
    double loss = 0;
    for (size_t i = 0; i < n; i++)
        loss += (double)p->w[i] * logp[i] + (double)p->u[i] * entropy[i] + (double)p->q[i] * value[i];
    free(logp), free(entropy), free(value);
    return loss;
}

static double loss_and_gradient(Model *m, const Workspace *w, const Problem *p) {
    const double loss = loss_of(m, w, p);
    model_backward(m, w, &p->batch, p->temperature, p->w, p->u, m->config.value_head ? p->q : NULL);
    return loss;
}

/* Checks that each tensor of `got` is within `relative` of `want`, relative to the tensor's largest value. */
static void check_gradients(const Model *m, const float *got, const float *want, double relative, const char *what) {
    for (int i = 0; i < TENSOR_COUNT; i++) {
        const TensorInfo *t = &m->tensor[i];
        if (!t->size) continue;
        for (size_t l = 0; l < t->layers; l++) {
            const size_t n = t->rows * t->columns, at = t->offset + l * n;
            double most = 0, worst = 0;
            for (size_t k = at; k < at + n; k++) {
                const double difference = fabs((double)got[k] - want[k]);
                most = fmax(most, fabs(want[k]));
                worst = difference <= worst ? worst : difference;
            }
            if (!(worst <= relative * most + 1e-30) || isnan(worst))
                fail_msg("%s: gradient of %s, layer %zu, is off by %g of %g", what, t->name, l, worst, most);
        }
    }
}

/* ==== Golden values ==== */

/* PyTorch computed the golden values in float64. A float32 forward pass through three layers is a chain of some hundred
 * sums with a relative error of a few 2^-24 = 6e-8 each: 1e-5 for log-probabilities, entropies and logits of order 1 to
 * 10. The backward pass doubles the chain, and the largest gradient of a tensor is a sum over all rows with
 * cancellation: 1e-4 of it. */

typedef struct GoldenModel {
    Model m;
    ModelFile file;
    Golden forward, adamw;
    Batch batch; /* all sequences are segments of one batch, with a target in each row */
    const double *target;
    int rows;
} GoldenModel;

static GoldenModel golden_model(void) {
    Error e;
    GoldenModel g;
    if (!model_load(&g.m, &g.file, "tests/golden/gpt2_tiny.bin", NULL, false, B, D, true, 0, NULL, &e))
        fail_msg("%s", e.text);
    FILE *f = golden_open("gpt2_tiny.txt");
    assert_true(golden_next(f, &g.forward) && golden_next(f, &g.adamw));
    fclose(f);
    const double *length = golden(&g.forward, "length"), *token = golden(&g.forward, "token");
    g.rows = golden_count(&g.forward, "token");
    g.target = golden(&g.forward, "target");
    const int sequences = golden_count(&g.forward, "length");
    g.batch = batch_new(g.rows, g.rows, sequences);
    for (int s = 0, at = 0; s < sequences; s++) {
        int32_t t[64];
        for (int i = 0; i < (int)length[s]; i++) t[i] = (int32_t)token[at + i];
        batch_segment(&g.batch, t, (int32_t)length[s], 0, -1);
        for (int i = 0; i < (int)length[s]; i++, at++) batch_target(&g.batch, at, (int32_t)g.target[at]);
    }
    return g;
}

static void golden_model_free(GoldenModel *g) {
    model_free(&g->m), model_file_free(&g->file), golden_free(&g->forward), golden_free(&g->adamw),
        batch_free(&g->batch);
}

static void check_close(const char *what, const float *got, const double *want, int n, double tolerance) {
    for (int i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= tolerance))
            fail_msg("%s[%d] is %.9g, PyTorch has %.9g", what, i, got[i], want[i]);
}

static void test_golden_forward(void **state) {
    (void)state;
    Error e;
    GoldenModel g = golden_model();
    const ModelConfig *c = &g.m.config;
    assert_true(c->layers == 3 && c->heads == 4 && c->width == 32 && c->vocab == 67 && c->context == 24 &&
                c->padded_vocab == 128);
    const int V = c->vocab, R = g.rows, first = (int)golden(&g.forward, "length")[0];
    float *logp = xmalloc((size_t)R * 4), *entropy = xmalloc((size_t)R * 4), *logits = xmalloc((size_t)(R * V) * 4);
    int32_t *argmax = xmalloc((size_t)R * 4);
    for (int train = 0; train < 2; train++) { /* activations kept for all layers, and for one layer at a time */
        Workspace w;
        assert_true(workspace_new(&w, &g.m, R, R, 8, train, 0, &e));
        const ModelOutput out = {.logp = logp, .entropy = entropy, .argmax = argmax};
        model_forward(&g.m, &w, &g.batch, 1, &out);
        check_close("logp", logp, golden(&g.forward, "logp"), R, 1e-5);
        check_close("entropy", entropy, golden(&g.forward, "entropy"), R, 1e-5);
        assert_true(model_logits(&g.m, &w, &g.batch, logits, &e));
        assert_int_equal(golden_count(&g.forward, "logits"), first * V);
        check_close("logits", logits, golden(&g.forward, "logits"), first * V, 1e-5);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) assert_true(logits[r * V + v] <= logits[r * V + argmax[r]]);
        model_forward(&g.m, &w, &g.batch, (float)golden(&g.forward, "temperature")[0], &out);
        check_close("logp_t", logp, golden(&g.forward, "logp_t"), R, 1e-5);
        check_close("entropy_t", entropy, golden(&g.forward, "entropy_t"), R, 1e-5);
        workspace_free(&w, &g.m);
    }
    free(logp), free(entropy), free(logits), free(argmax);
    golden_model_free(&g);
}

static void test_golden_gradient(void **state) {
    (void)state;
    GoldenModel g = golden_model();
    FILE *f = fopen("tests/golden/gpt2_tiny_grad.bin", "rb");
    assert_non_null(f);
    float *want = xcalloc(g.m.parameters + 1, sizeof *want);
    assert_int_equal(fread(want, sizeof *want, g.m.parameters + 1, f), g.m.parameters);
    fclose(f);
    Problem p = {
        .batch = g.batch, .w = golden_floats(&g.forward, "w"), .u = golden_floats(&g.forward, "u"), .temperature = 1};
    p.q = xcalloc((size_t)g.rows, sizeof(float));
    for (int recompute = 0; recompute < 3; recompute++) {
        Workspace w = train_workspace(&g.m, &g.batch, recompute);
        model_zero_grads(&g.m);
        const double loss = loss_and_gradient(&g.m, &w, &p), golden_loss = golden(&g.forward, "loss")[0];
        assert_true(fabs(loss - golden_loss) < 1e-5 * g.rows);
        float *got = gradients(&g.m);
        check_gradients(&g.m, got, want, 1e-4, "golden");
        const double norm = sqrt(B->square_sum(D, g.m.grads, g.m.parameters));
        assert_true(fabs(norm / golden(&g.forward, "norm")[0] - 1) < 1e-5);
        free(got);
        workspace_free(&w, &g.m);
    }
    free(want), free(p.w), free(p.u), free(p.q);
    golden_model_free(&g);
}

/* The sum of the absolute biases of all keys. */
static double key_biases(const Model *m) {
    const int width = m->config.width;
    double sum = 0;
    float *bias = xmalloc(3 * (size_t)width * sizeof *bias);
    for (int l = 0; l < m->config.layers; l++) {
        B->weights_download(D, bias, model_weight(m, TENSOR_qkvb, l), 3 * (size_t)width);
        for (int c = width; c < 2 * width; c++) sum += fabs((double)bias[c]);
    }
    free(bias);
    return sum;
}

/* The tolerance of the weight norm against PyTorch's. Softmax is invariant to a bias of the keys, so the exact gradient
 * of that bias is 0 and the computed one is rounding error, which AdamW scales up to steps of the learning rate in a
 * direction that differs between processors: after t steps two runs may be 2 lr t apart in each key bias b, and their
 * norms W by 2 lr t sum|b| / W. All other gradients agree to about 1e-5 of their size (float32 sums through three
 * layers), so steps agree to 1e-5 lr, and ten of them to 3e-7 per weight, which is 0.15 on average: 2e-6 of the norm.
 * The tolerance is larger, because some gradients are smaller than others. */
static void test_golden_adamw(void **state) {
    (void)state;
    Error e;
    GoldenModel g = golden_model();
    Workspace w = train_workspace(&g.m, &g.batch, 0);
    Optimizer o;
    assert_true(optimizer_new(&o, &g.m, &e));
    o.beta1 = golden(&g.adamw, "beta1")[0];
    o.beta2 = golden(&g.adamw, "beta2")[0];
    o.eps = golden(&g.adamw, "eps")[0];
    o.weight_decay = golden(&g.adamw, "weight_decay")[0];
    o.max_grad_norm = golden(&g.adamw, "clip")[0];
    const double *length = golden(&g.forward, "length");
    float *dlogp = xcalloc((size_t)g.rows, sizeof *dlogp), *logp = xcalloc((size_t)g.rows, sizeof *logp);
    int n = g.rows - golden_count(&g.forward, "length");
    for (int i = 0; i < g.rows; i++) dlogp[i] = -1.0f / (float)n;
    for (int s = 0, at = 0; s < golden_count(&g.forward, "length"); s++) {
        at += (int)length[s];
        dlogp[at - 1] = 0;
    }
    for (int step = 0; step <= 10; step++) {
        const ModelOutput out = {.logp = logp};
        model_forward_backward(&g.m, &w, &g.batch, 1, dlogp, &out);
        double loss = 0;
        for (int i = 0; i < g.rows; i++) loss += (double)dlogp[i] * logp[i];
        if (!(fabs(loss - golden(&g.adamw, "loss")[step]) < 2e-5))
            fail_msg("step %d: loss %.9g, PyTorch has %.9g", step, loss, golden(&g.adamw, "loss")[step]);
        if (step == 10) break;
        const OptimizerResult r = optimizer_step(&o, &g.m, golden(&g.adamw, "lr")[0]);
        assert_false(r.skipped);
        assert_true(fabs(r.grad_norm / golden(&g.adamw, "grad_norm")[step] - 1) < 1e-4);
        const double norm = sqrt(B->square_sum(D, (const Floats *)g.m.weights, g.m.parameters));
        const double want = golden(&g.adamw, "weight_norm")[step], moved = 2 * golden(&g.adamw, "lr")[0] * (step + 1);
        if (!(fabs(norm / want - 1) < 5e-6 + moved * key_biases(&g.m) / (want * want)))
            fail_msg("step %d: weight norm %.9g, PyTorch has %.9g", step, norm, want);
        if (step % 2) { /* in the other steps the next backward pass stores */
            model_settle_grads(&g.m);
            assert_true(B->square_sum(D, g.m.grads, g.m.parameters) == 0);
        }
    }
    assert_int_equal(o.step, 10);
    free(dlogp), free(logp);
    optimizer_free(&o, &g.m), workspace_free(&w, &g.m), golden_model_free(&g);
}

/* ==== Finite differences ==== */

/* d loss / dh at weights + h * direction (in tensor t, layer l), by a fourth-order central difference. */
static double slope_along(Model *m, const Workspace *w, const Problem *p, const float *weights, const float *direction,
                          size_t at, size_t n, double h) {
    static const double place[4] = {1, -1, 2, -2}, share[4] = {8, -8, -1, 1};
    float *moved = xmalloc(n * sizeof *moved);
    double slope = 0;
    for (int k = 0; k < 4; k++) {
        for (size_t i = 0; i < n; i++) moved[i] = weights[at + i] + (float)(h * place[k] * direction[i]);
        B->weights_upload(D, weights_at(B, m->weights, at), moved, n);
        slope += share[k] * loss_of(m, w, p) / (12 * h);
    }
    B->weights_upload(D, weights_at(B, m->weights, at), weights + at, n);
    free(moved);
    return slope;
}

/* Every tensor of every layer, along its gradient and along random directions.
 *
 * The quotient multiplies the loss's float32 rounding error (about 3e-6 for all targets together) by 18 / (12 h) = 75
 * for h = 0.02: 2e-4. Its truncation error is of order h^4 = 2e-7 times a fifth derivative, for which 2e-3 of the
 * gradient's norm leaves room. A model with steeper functions needs a smaller h. */
static void check_differences(ModelConfig c, int recompute, uint64_t seed, double h) {
    Model m = random_model(c, seed, 0.2);
    Problem p = mixed_problem(seed, c.vocab);
    Workspace w = train_workspace(&m, &p.batch, recompute);
    float *weights = xmalloc(m.parameters * sizeof *weights);
    B->weights_download(D, weights, m.weights, m.parameters);
    loss_and_gradient(&m, &w, &p);
    float *g = gradients(&m), *direction = xmalloc(m.parameters * sizeof *direction);
    Random r = random_start(seed, 5);
    for (int i = 0; i < TENSOR_COUNT; i++) {
        const TensorInfo *t = &m.tensor[i];
        if (!t->size) continue;
        const size_t n = t->rows * t->columns,
                     used = i == TENSOR_wte || i == TENSOR_headw ? (size_t)(c.vocab * c.width) : n;
        for (size_t l = 0; l < t->layers; l++)
            for (int way = 0; way < 3; way++) {
                const size_t at = t->offset + l * n;
                double norm = 0, g_norm = 0, expected = 0;
                for (size_t k = 0; k < n; k++) {
                    direction[k] = k >= used ? 0 : way ? (float)random_normal(&r) : g[at + k];
                    norm += (double)direction[k] * direction[k];
                    g_norm += (double)g[at + k] * g[at + k];
                }
                for (size_t k = 0; k < n; k++) {
                    direction[k] = (float)(direction[k] / sqrt(norm));
                    expected += (double)direction[k] * g[at + k];
                }
                assert_true(g_norm > 0);
                const double slope = slope_along(&m, &w, &p, weights, direction, at, n, h);
                if (!(fabs(slope - expected) < 2e-3 * sqrt(g_norm) + 4e-6 / h))
                    fail_msg("%s, layer %zu, %s: slope %g, gradient %g (its norm is %g)", t->name, l,
                             way ? "random" : "along the gradient", slope, expected, sqrt(g_norm));
            }
    }
    for (size_t k = (size_t)(c.vocab * c.width); k < m.tensor[TENSOR_wte].size; k++) /* padding */
        assert_true(g[k] == 0 && (c.tied || g[m.tensor[TENSOR_headw].offset + k] == 0));
    free(weights), free(g), free(direction);
    problem_free(&p), workspace_free(&w, &m), model_free(&m);
}

static void test_differences(void **state) {
    (void)state;
    check_differences(small_config(4, 1), 0, 31, 0.02);
}

static void test_differences_grouped(void **state) {
    (void)state;
    ModelConfig c = small_config(2, 1);
    c.hidden = 40; /* not 4 C, and narrower than the packed queries, keys and values of other shapes */
    check_differences(c, 1, 32, 0.02);
    c = small_config(1, 0);
    c.norm = NORM_RMS;
    c.norm_eps = 1e-6f;
    c.layers = 1;
    c.hidden = 8; /* narrower than q, k and v, so these are the widest activation */
    check_differences(c, 2, 33, 0.02);
}

static void test_differences_families(void **state) {
    (void)state;
    for (int v = 1; v < VARIANTS; v++) check_differences(variant_config(v, v == 2), v % 3, 34 + (uint64_t)v, 0.005);
}

/* ==== Equalities ==== */

/* The same sums in another order differ by float32 rounding: log-probabilities, entropies and values of order 1 to 5 by
 * up to 4e-6, or 64 roundings of 2^-24; gradients by 1e-5 to 2e-5 of a tensor's largest. */

static void check_recompute(ModelConfig c) {
    Model m = random_model(c, 41, 0.2);
    Problem p = mixed_problem(41, m.config.vocab);
    float *want = NULL;
    double loss = 0;
    for (int recompute = 0; recompute < 3; recompute++) {
        Workspace w = train_workspace(&m, &p.batch, recompute);
        model_zero_grads(&m);
        const double this = loss_and_gradient(&m, &w, &p);
        float *g = gradients(&m);
        if (!want) {
            want = g;
            loss = this;
        } else {
            assert_true(this == loss);
            assert_memory_equal(g, want, m.parameters * sizeof *g); /* the same operations on the same numbers */
            free(g);
        }
        workspace_free(&w, &m);
    }
    free(want), problem_free(&p), model_free(&m);
}

static void test_recompute(void **state) {
    (void)state;
    for (int v = 0; v < VARIANTS; v++) check_recompute(variant_config(v, 1));
}

/* Each sequence gives the same results alone in a batch as among others. */
static void check_packed_alone(ModelConfig c) {
    enum { SEQUENCES = 6 };
    Model m = random_model(c, 42, 0.2);
    Problem p = {.batch = batch_new(150, 150, SEQUENCES), .temperature = 1};
    Random r = random_start(42, 0);
    int32_t token[SEQUENCES][20];
    static const int length[SEQUENCES] = {20, 2, 13, 1, 7, 20};
    for (int s = 0; s < SEQUENCES; s++) {
        random_tokens(&r, token[s], length[s], m.config.vocab);
        assert_int_equal(batch_sequence(&p.batch, token[s], NULL, length[s]), length[s] - 1);
    }
    problem_weights(&p, 42);
    Workspace w = train_workspace(&m, &p.batch, 0);
    float logp[150], value[150], alone_logp[20], alone_value[20];
    model_forward(&m, &w, &p.batch, 1, &(ModelOutput){.logp = logp, .value = value});
    loss_and_gradient(&m, &w, &p);
    float *together = gradients(&m);
    model_zero_grads(&m);
    for (int s = 0, at = 0; s < SEQUENCES; at += length[s++] - 1) {
        Problem one = {.batch = batch_new(20, 20, 1), .w = p.w + at, .u = p.u + at, .q = p.q + at, .temperature = 1};
        batch_sequence(&one.batch, token[s], NULL, length[s]);
        model_forward(&m, &w, &one.batch, 1, &(ModelOutput){.logp = alone_logp, .value = alone_value});
        for (int i = 0; i < length[s] - 1; i++)
            assert_true(fabs(alone_logp[i] - logp[at + i]) < 4e-6 && fabs(alone_value[i] - value[at + i]) < 4e-6);
        loss_and_gradient(&m, &w, &one); /* micro-batches add up */
        batch_free(&one.batch);
    }
    float *apart = gradients(&m);
    check_gradients(&m, apart, together, 1e-5, "micro-batches");
    free(together), free(apart);
    problem_free(&p), workspace_free(&w, &m), model_free(&m);
}

static void test_packed_alone(void **state) {
    (void)state;
    check_packed_alone(small_config(4, 1));
    for (int v = 0; v < VARIANTS; v++) check_packed_alone(variant_config(v, 1));
}

/* A prompt shared by its answers against a copy of the prompt for each answer: outputs and gradients. */
static void check_shared_prefix(ModelConfig c) {
    enum { PROMPT = 9, ANSWERS = 5, FAMILIES = 2 };
    Model m = random_model(c, 43, 0.2);
    Problem shared = {.batch = batch_new(200, 100, 40), .temperature = 1.3f}, copies = shared;
    copies.batch = batch_new(300, 100, 40);
    Random r = random_start(43, 0);
    for (int f = 0; f < FAMILIES; f++) {
        int32_t t[PROMPT + 11];
        random_tokens(&r, t, PROMPT, m.config.vocab);
        const int prompt = batch_segment(&shared.batch, t, PROMPT, 0, -1);
        for (int k = 0; k < ANSWERS; k++) {
            static const int length[ANSWERS] = {1, 11, 4, 2, 8};
            uint8_t mask[PROMPT + 11];
            for (int i = 0; i < PROMPT + length[k]; i++) mask[i] = i >= PROMPT;
            random_tokens(&r, t + PROMPT, length[k], m.config.vocab);
            batch_completion(&shared.batch, prompt, t + PROMPT, NULL, length[k]);
            assert_int_equal(batch_sequence(&copies.batch, t, mask, PROMPT + length[k]), length[k]);
        }
    }
    assert_int_equal(shared.batch.targets, copies.batch.targets);
    problem_weights(&shared, 43);
    problem_weights(&copies, 43);
    Workspace ws = train_workspace(&m, &shared.batch, 0), wc = train_workspace(&m, &copies.batch, 0);
    float logp[2][100], entropy[2][100], value[2][100];
    model_forward(&m, &ws, &shared.batch, 1.3f,
                  &(ModelOutput){.logp = logp[0], .entropy = entropy[0], .value = value[0]});
    model_forward(&m, &wc, &copies.batch, 1.3f,
                  &(ModelOutput){.logp = logp[1], .entropy = entropy[1], .value = value[1]});
    for (int i = 0; i < shared.batch.targets; i++) {
        assert_true(fabs(logp[0][i] - logp[1][i]) < 4e-6);
        assert_true(fabs(entropy[0][i] - entropy[1][i]) < 4e-6);
        assert_true(fabs(value[0][i] - value[1][i]) < 4e-6);
    }
    loss_and_gradient(&m, &ws, &shared);
    float *g = gradients(&m);
    model_zero_grads(&m);
    loss_and_gradient(&m, &wc, &copies);
    float *want = gradients(&m);
    check_gradients(&m, g, want, 2e-5, "shared prefix");
    free(g), free(want);
    workspace_free(&ws, &m), workspace_free(&wc, &m), problem_free(&shared), problem_free(&copies), model_free(&m);
}

static void test_shared_prefix(void **state) {
    (void)state;
    for (int v = 0; v < VARIANTS; v++) check_shared_prefix(variant_config(v, 1));
}

/* Each of dlogp, dentropy and dvalue alone: the three gradients add up to that of all together, and with dvalue alone
 * the head is not run. */
static void test_gradients_alone(void **state) {
    (void)state;
    Model m = random_model(small_config(2, 1), 47, 0.3);
    Problem p = mixed_problem(47, m.config.vocab);
    Workspace w = train_workspace(&m, &p.batch, 0);
    const int n = p.batch.targets;
    float value[200], same[200];
    loss_and_gradient(&m, &w, &p);
    float *want = gradients(&m);
    model_zero_grads(&m);
    model_forward(&m, &w, &p.batch, p.temperature, &(ModelOutput){.value = value});
    model_backward(&m, &w, &p.batch, p.temperature, NULL, NULL, p.q);
    model_backward(&m, &w, &p.batch, p.temperature, p.w, NULL, NULL);
    model_backward(&m, &w, &p.batch, p.temperature, NULL, p.u, NULL);
    float *got = gradients(&m), logp[200];
    check_gradients(&m, got, want, 2e-5, "one at a time");
    model_forward(&m, &w, &p.batch, p.temperature, &(ModelOutput){.value = same, .logp = logp});
    assert_memory_equal(value, same, (size_t)n * sizeof *value);
    free(got), free(want);
    workspace_free(&w, &m), problem_free(&p), model_free(&m);
}

/* model_forward_backward() equals both calls; a second call doubles the gradients. */
static void test_forward_backward(void **state) {
    (void)state;
    Model m = random_model(small_config(4, 0), 44, 0.2);
    Problem p = mixed_problem(44, m.config.vocab);
    Workspace w = train_workspace(&m, &p.batch, 0);
    const size_t n = (size_t)p.batch.targets;
    float *logp = xmalloc(n * 4), *again = xmalloc(n * 4), *entropy = xmalloc(n * 4);
    model_forward(&m, &w, &p.batch, 0.8f, &(ModelOutput){.logp = logp});
    model_backward(&m, &w, &p.batch, 0.8f, p.w, NULL, NULL);
    float *apart = gradients(&m);
    model_zero_grads(&m);
    model_forward_backward(&m, &w, &p.batch, 0.8f, p.w, &(ModelOutput){.logp = again, .entropy = entropy});
    assert_memory_equal(again, logp, n * 4);
    for (size_t i = 0; i < n; i++) assert_true(entropy[i] > 0 && entropy[i] <= logf((float)m.config.vocab) + 1e-5f);
    float *both = gradients(&m);
    check_gradients(&m, both, apart, 1e-6, "forward_backward");
    model_forward_backward(&m, &w, &p.batch, 0.8f, p.w, &(ModelOutput){.logp = again});
    float *twice = gradients(&m);
    for (size_t i = 0; i < m.parameters; i++) both[i] *= 2;
    check_gradients(&m, twice, both, 1e-5, "twice");
    free(logp), free(again), free(entropy), free(apart), free(both), free(twice);
    workspace_free(&w, &m), problem_free(&p), model_free(&m);
}

/* A workspace that has held larger batches gives the same results as a new one. */
static void test_workspace_reuse(void **state) {
    (void)state;
    Model m = random_model(small_config(2, 1), 45, 0.2);
    Problem large = mixed_problem(45, m.config.vocab), p = {.batch = batch_new(200, 200, 40), .temperature = 1};
    int32_t t[5] = {1, 2, 3, 4, 5};
    batch_sequence(&p.batch, t, NULL, 5);
    problem_weights(&p, 1);
    for (int recompute = 0; recompute < 3; recompute++) {
        Workspace used = train_workspace(&m, &large.batch, recompute),
                  fresh = train_workspace(&m, &large.batch, recompute);
        loss_and_gradient(&m, &used, &large);
        model_zero_grads(&m);
        const double a = loss_and_gradient(&m, &used, &p);
        float *g = gradients(&m);
        model_zero_grads(&m);
        const double b = loss_and_gradient(&m, &fresh, &p);
        float *want = gradients(&m);
        assert_true(a == b);
        assert_memory_equal(g, want, m.parameters * sizeof *g);
        free(g), free(want);
        workspace_free(&used, &m), workspace_free(&fresh, &m);
    }
    problem_free(&large), problem_free(&p), model_free(&m);
}

/* A backward pass after model_forget_grads(), whatever the memory holds, gives the gradients of one after zeros, and the next
 * one adds to them. The loss is one of log-probabilities and entropies, or one of values alone. */
static void test_forgotten_gradients(void **state) {
    (void)state;
    for (int values = 0; values < 2; values++)
        for (int variant = 0; variant < VARIANTS; variant++) {
            Model m = random_model(variant_config(variant, values), 47, 0.2);
            Problem p = mixed_problem(47, m.config.vocab);
            Workspace w = train_workspace(&m, &p.batch, 0);
            float *junk = xmalloc(m.parameters * sizeof *junk);
            for (size_t i = 0; i < m.parameters; i++) junk[i] = NAN;
            float *g[2];
            for (int forgotten = 0; forgotten < 2; forgotten++) {
                model_zero_grads(&m);
                if (forgotten) {
                    B->upload(D, m.grads, junk, m.parameters * sizeof *junk);
                    model_forget_grads(&m);
                }
                for (int pass = 0; pass < 2; pass++) {
                    loss_of(&m, &w, &p);
                    if (values) model_backward(&m, &w, &p.batch, p.temperature, NULL, NULL, p.q);
                    else model_backward(&m, &w, &p.batch, p.temperature, p.w, p.u, NULL);
                }
                g[forgotten] = gradients(&m);
            }
            for (size_t i = 0; i < m.parameters; i++) assert_true(g[0][i] == g[1][i]); /* +0 and -0 are equal */
            free(g[0]), free(g[1]), free(junk);
            workspace_free(&w, &m), problem_free(&p), model_free(&m);
        }
}

/* Rows without a target add no head computation and no loss; a batch without targets has a zero gradient. */
static void test_no_targets(void **state) {
    (void)state;
    Model m = random_model(small_config(4, 0), 46, 0.2);
    Batch b = batch_new(32, 4, 2);
    int32_t t[7] = {0, 1, 2, 3, 4, 5, 6};
    batch_segment(&b, t, 7, 0, -1);
    Workspace w = train_workspace(&m, &b, 0);
    float none[1] = {0};
    model_forward(&m, &w, &b, 1, &(ModelOutput){.logp = none, .entropy = none});
    for (int forgotten = 0; forgotten < 2; forgotten++) {
        if (forgotten) model_forget_grads(&m);
        model_backward(&m, &w, &b, 1, none, none, NULL);
        model_settle_grads(&m);
        assert_true(B->square_sum(D, m.grads, m.parameters) == 0);
    }
    workspace_free(&w, &m), batch_free(&b), model_free(&m);
}

/* ==== NEFTune ==== */

static void test_neftune(void **state) {
    (void)state;
    Model m = random_model(small_config(4, 0), 47, 0.2);
    Problem p = mixed_problem(47, m.config.vocab);
    Workspace w = train_workspace(&m, &p.batch, 2);
    float *scale = xcalloc((size_t)p.batch.rows, sizeof *scale);
    const double plain = loss_of(&m, &w, &p);
    int32_t *record = xcalloc((size_t)p.batch.rows, sizeof *record);
    w.noise_scale = scale;
    w.noise_record = record;
    w.noise_seed = 1;
    w.noise_stream = RANDOM_NOISE;
    assert_true(loss_of(&m, &w, &p) == plain); /* scale 0 */
    for (int i = 0; i < p.batch.rows; i++) scale[i] = 0.3f;
    const double noisy = loss_of(&m, &w, &p);
    assert_true(fabs(noisy - plain) > 1e-3);
    assert_true(loss_of(&m, &w, &p) == noisy);
    w.noise_stream++;
    assert_true(loss_of(&m, &w, &p) != noisy);
    w.noise_stream--;
    /* the gradient is that of the noisy loss: along itself, for the embeddings, to which the noise is added */
    float *weights = xmalloc(m.parameters * sizeof *weights);
    B->weights_download(D, weights, m.weights, m.parameters);
    loss_and_gradient(&m, &w, &p);
    float *g = gradients(&m);
    const TensorInfo *t = &m.tensor[TENSOR_wpe];
    double norm = 0;
    for (size_t i = 0; i < t->size; i++) norm += (double)g[t->offset + i] * g[t->offset + i];
    float *direction = xmalloc(t->size * sizeof *direction);
    for (size_t i = 0; i < t->size; i++) direction[i] = (float)(g[t->offset + i] / sqrt(norm));
    const double slope = slope_along(&m, &w, &p, weights, direction, t->offset, t->size, 0.02);
    assert_true(fabs(slope / sqrt(norm) - 1) < 2e-3);
    free(scale), free(record), free(weights), free(g), free(direction);
    workspace_free(&w, &m), problem_free(&p), model_free(&m);
}

/* ==== bfloat16 ==== */

/* With products in bfloat16, and with activations in it too, the results stay within the error of an 8-bit significand of
 * the float32 results. */
static void check_bf16(const Backend *b) {
    Error e;
    Device *half;
    if (!b->open(&half, DTYPE_BF16, &e)) {
        print_message("             skipped: %s\n", e.text);
        skip();
    }
    Model m = random_model(small_config(2, 1), 48, 0.2);
    Problem p = mixed_problem(48, m.config.vocab);
    Workspace w = train_workspace(&m, &p.batch, 0);
    const double loss = loss_and_gradient(&m, &w, &p);
    float *want = gradients(&m);
    model_zero_grads(&m);
    Model other = m; /* the same weights in the other precision */
    other.device = half;
    other.backend = b;
    Workspace narrow = train_workspace(&other, &p.batch, 0);
    const double loss_half = loss_and_gradient(&other, &narrow, &p);
    float *g = gradients(&m);
    assert_true(fabs(loss_half - loss) < 0.02 * p.batch.targets && loss_half != loss);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < m.parameters; i++) {
        difference += pow((double)g[i] - want[i], 2);
        norm += pow(want[i], 2);
    }
    assert_true(sqrt(difference / norm) < 0.02);
    assert_true(model_sync(&other, &e));
    free(want), free(g);
    workspace_free(&narrow, &other);
    b->close(half);
    workspace_free(&w, &m), problem_free(&p), model_free(&m);
}

static void test_bf16(void **state) {
    (void)state;
    check_bf16(backend_cpu());
}

static void test_bf16_activations(void **state) {
    (void)state;
    check_bf16(backend_cpu_for(DTYPE_BF16));
}

/* ==== Memory ==== */

static size_t counted;

static void *counting_alloc(Device *d, size_t bytes, const char *what, Error *e) {
    counted += bytes;
    return backend_cpu()->alloc(d, bytes, what, e);
}

static void *counting_zeroed(Device *d, size_t bytes, const char *what, Error *e) {
    void *memory = counting_alloc(d, bytes, what, e);
    if (memory) memset(memory, 0, bytes);
    return memory;
}
static void *failing_alloc(Device *d, size_t bytes, const char *what, Error *e) {
    if (counted == 0) {
        error_set(e, "out of memory: %zu bytes for %s", bytes, what);
        return NULL;
    }
    counted--;
    return backend_cpu()->alloc(d, bytes, what, e);
}

static void *failing_zeroed(Device *d, size_t bytes, const char *what, Error *e) {
    void *memory = failing_alloc(d, bytes, what, e);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

/* The predicted memory equals the memory that is requested from the device, and the arena ends where predicted: nothing
 * beyond it is touched. */
static void test_memory(void **state) {
    (void)state;
    Error e;
    Backend counting = *backend_cpu();
    counting.alloc = counting_alloc;
    counting.alloc_zeroed = counting_zeroed;
    ModelConfig c = small_config(2, 1);
    counted = 0;
    Model m;
    assert_true(model_new(&m, &c, &counting, D, true, &e));
    assert_int_equal(counted, model_bytes(&c, &counting, true));
    counted = 0;
    Model copy;
    model_init(&m, 1);
    assert_true(model_copy(&copy, &m, &e));
    assert_int_equal(counted, model_bytes(&c, &counting, false));
    counted = 0;
    Optimizer o;
    assert_true(optimizer_new(&o, &m, &e));
    assert_int_equal(counted, optimizer_bytes(&c, &counting));
    counted = 0;
    KVCache kv;
    assert_true(kv_new(&kv, &m, 77, &e));
    assert_int_equal(counted, kv_bytes(&c, &counting, 77));
    kv_free(&kv, &m);
    size_t before = SIZE_MAX;
    for (int recompute = 0; recompute <= 3; recompute++) { /* 3: for inference */
        Workspace w;
        counted = 0;
        assert_true(workspace_new(&w, &m, 100, 50, 9, recompute < 3, recompute % 3, &e));
        assert_int_equal(counted, workspace_bytes(&c, &counting, 100, 50, 9, recompute < 3, recompute % 3));
        assert_true(counted < before); /* each level needs less memory */
        before = counted;
        workspace_free(&w, &m);
    }
    optimizer_free(&o, &m), model_free(&m), model_free(&copy);
}

/* Wherever an allocation fails there is a message, and nothing is leaked or freed twice. */
static void test_out_of_memory(void **state) {
    (void)state;
    Backend failing = *backend_cpu();
    failing.alloc = failing_alloc;
    failing.alloc_zeroed = failing_zeroed;
    ModelConfig c = small_config(4, 0);
    for (size_t at = 0; at < 4; at++) {
        Error e = {""};
        Model m;
        ModelFile f;
        Optimizer o;
        counted = at;
        assert_false(model_load(&m, &f, NULL, &c, false, &failing, D, true, 1, &o, &e));
        assert_non_null(strstr(e.text, "out of memory: "));
        counted = at;
        assert_false(model_load(&m, &f, "tests/golden/gpt2_tiny.bin", NULL, false, &failing, D, true, 1, &o, &e));
    }
    Error e = {""};
    Model m = random_model(c, 1, 1);
    m.backend = &failing;
    counted = 0;
    Workspace w;
    KVCache kv;
    Model copy;
    assert_false(workspace_new(&w, &m, 10, 10, 1, true, 0, &e) || kv_new(&kv, &m, 3, &e) || model_copy(&copy, &m, &e));
    m.backend = B;
    model_free(&m);
}

/* ==== Configuration ==== */

static void test_descriptors(void **state) {
    (void)state;
    Error e = {""};
    ModelConfig c;
    bool ok;
    static const struct {
        const char *text;
        int layers, heads, width;
        size_t elements; /* the published models: 124,439,808 and so on, and the padding of the vocabulary */
    } known[] = {{"d12", 12, 12, 768, 124439808 + 47 * 768},
                 {"gpt2:d12", 12, 12, 768, 124439808 + 47 * 768},
                 {"d24", 24, 16, 1024, 354823168 + 47 * 1024},
                 {"gpt2:d36", 36, 20, 1280, 774030080 + 47 * 1280},
                 {"d48", 48, 25, 1600, 1557611200 + 47 * (size_t)1600},
                 {"gpt2:c768", 12, 12, 768, 124439808 + 47 * 768},
                 {"d6", 6, 6, 384, 0},
                 {"d60", 60, 30, 1920, 0},
                 {"d2", 2, 2, 128, 0},
                 {"d1", 1, 1, 64, 0}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        assert_true(gpt2_config_descriptor(known[i].text, &c, &ok, &e) && ok);
        assert_true(c.layers == known[i].layers && c.heads == known[i].heads && c.width == known[i].width);
        assert_true(c.vocab == 50257 && c.padded_vocab == 50304 && c.context == 1024 && c.hidden == 4 * c.width);
        assert_true(c.kv_heads == c.heads && !c.value_head && model_config_check(&c, "d", &e));
        if (known[i].elements) assert_int_equal(gpt2_file_elements(&c), known[i].elements);
    }
    static const char *const bad[] = {"d0", "gpt2:d0", "d99999", "gpt2:c100", "d99999999999999999999", "gpt2:c0"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_true(gpt2_config_descriptor(bad[i], &c, &ok, &e));
        assert_false(ok);
        assert_non_null(strstr(e.text, bad[i]));
    }
    static const char *const names[] = {"d",   "dog", "d12.bin", "./d12", "gpt2:",   "gpt2", "c768",
                                        "d-3", "d 3", "",        "-",     "gpt2:x3", "D12"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_false(gpt2_config_descriptor(names[i], &c, &ok, &e));
}

static void test_config_check(void **state) {
    (void)state;
    const ModelConfig good = gpt2_config(2, 4, 24, 37, 20);
    Error e = {""};
    assert_true(model_config_check(&good, "x", &e));
    static const struct {
        size_t field;
        int32_t value;
        const char *message;
    } bad[] = {{offsetof(ModelConfig, context), 0, "context length is 0"},
               {offsetof(ModelConfig, context), INT32_MAX, "context length is 2147483647"},
               {offsetof(ModelConfig, vocab), -1, "vocabulary is -1"},
               {offsetof(ModelConfig, padded_vocab), 36, "padded vocabulary is 36, expected 37 to"},
               {offsetof(ModelConfig, padded_vocab), INT32_MAX, "padded vocabulary"},
               {offsetof(ModelConfig, layers), 0, "layers is 0"},
               {offsetof(ModelConfig, layers), INT32_MIN, "layers is -2147483648"},
               {offsetof(ModelConfig, heads), 0, "heads is 0"},
               {offsetof(ModelConfig, head_size), 0, "width 24 is not a multiple of 4 heads"},
               {offsetof(ModelConfig, head_size), -1, "heads of -1 channels"},
               {offsetof(ModelConfig, head_size), 2048, "heads of 2048 channels"},
               {offsetof(ModelConfig, kv_heads), 0, "key/value heads is 0"},
               {offsetof(ModelConfig, kv_heads), 3, "4 heads are not a multiple of 3 key/value heads"},
               {offsetof(ModelConfig, kv_heads), 8, "key/value heads is 8, expected 1 to 4"},
               {offsetof(ModelConfig, width), 0, "width is 0"},
               {offsetof(ModelConfig, width), 1 << 20, "width is 1048576"},
               {offsetof(ModelConfig, hidden), 0, "hidden width is 0"},
               {offsetof(ModelConfig, norm), 2, "norm is 2"},
               {offsetof(ModelConfig, position), -1, "position is -1"},
               {offsetof(ModelConfig, mlp), 7, "mlp is 7"},
               {offsetof(ModelConfig, mlp_bias), 2, "bias of the MLP is 2"},
               {offsetof(ModelConfig, qkv_bias), -1, "bias of queries, keys and values is -1"},
               {offsetof(ModelConfig, tied), 2, "tied output matrix is 2"},
               {offsetof(ModelConfig, value_head), 2, "value head is 2"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ModelConfig c = good;
        memcpy((char *)&c + bad[i].field, &bad[i].value, 4);
        assert_false(model_config_check(&c, "file.bin", &e));
        if (!strstr(e.text, bad[i].message) || strncmp(e.text, "file.bin: ", 10))
            fail_msg("\"%s\", expected \"%s\"", e.text, bad[i].message);
    }
}

/* The table of tensors: no gaps, no overlaps; the head is last; only matrices have weight decay. */
static void test_tensors(void **state) {
    (void)state;
    TensorInfo t[TENSOR_COUNT];
    for (int value = 0; value < 2; value++) {
        const ModelConfig c = small_config(2, value);
        const size_t all = model_tensors(&c, t);
        size_t at = 0;
        for (int i = 0; i < TENSOR_COUNT; i++) {
            assert_int_equal(t[i].offset, at);
            assert_int_equal(t[i].size, t[i].rows * t[i].columns * t[i].layers);
            at += t[i].size;
            assert_true(t[i].decay == (i == TENSOR_wte || i == TENSOR_wpe || i == TENSOR_qkvw || i == TENSOR_attprojw ||
                                       i == TENSOR_fcw || i == TENSOR_fcprojw || i == TENSOR_headw ||
                                       i == TENSOR_valuew || (i >= FIRST_LORA_TENSOR && i < FIRST_DORA_TENSOR)));
        }
        assert_int_equal(at, all);
        const size_t C = 24, Q = 40, KV = 20, L = 2;
        const size_t layer = 4 * C + (Q + 2 * KV) * (C + 1) + C * Q + 2 * 4 * C * C + 4 * C * C;
        assert_int_equal(gpt2_file_elements(&c), 128 * C + 20 * C + L * layer + 2 * C + 128 * C);
        assert_int_equal(all - gpt2_file_elements(&c), value ? C + 1 : 0);
    }
}

static void test_init(void **state) {
    (void)state;
    Error e;
    ModelConfig c = gpt2_config(3, 4, 96, 300, 64);
    c.value_head = 1;
    c.tied = 0;
    Model a, b;
    assert_true(model_new(&a, &c, B, D, false, &e) && model_new(&b, &c, B, D, false, &e));
    assert_null(a.grads);
    model_init(&a, 7);
    model_init(&b, 7);
    float *x = xmalloc(a.parameters * sizeof *x), *y = xmalloc(a.parameters * sizeof *y);
    B->weights_download(D, x, a.weights, a.parameters);
    B->weights_download(D, y, b.weights, a.parameters);
    assert_memory_equal(x, y, a.parameters * sizeof *x);
    model_init(&b, 8);
    B->weights_download(D, y, b.weights, a.parameters);
    assert_memory_not_equal(x, y, a.parameters * sizeof *x);
    for (int i = 0; i < TENSOR_COUNT; i++) {
        const TensorInfo *t = &a.tensor[i];
        double deviation = t->init == INIT_NORMAL     ? 0.02
                           : t->init == INIT_RESIDUAL ? 0.02 / sqrt(6)
                                                      : 0,
               sum = 0, squares = 0;
        if (i == TENSOR_valuew) deviation = 1 / sqrt(97);
        if (!t->size) continue;
        const size_t n = i == TENSOR_wte || i == TENSOR_headw ? 300 * 96 : t->size;
        for (size_t k = 0; k < t->size; k++) {
            const double v = x[t->offset + k] - (t->init == INIT_ONE);
            sum += v;
            squares += v * v;
            if (k >= n || deviation == 0) assert_true(v == 0);
        }
        assert_true(fabs(sum / n) <= 5 * deviation / sqrt(n));
        assert_true(fabs(squares / n - deviation * deviation) <= 5 * deviation * deviation * sqrt(2.0 / n));
    }
    free(x), free(y), model_free(&a), model_free(&b);
}

/* ==== Optimizer ==== */

static void test_optimizer(void **state) {
    (void)state;
    Error e;
    Model m = random_model(small_config(4, 1), 51, 0.2);
    Optimizer o;
    assert_true(optimizer_new(&o, &m, &e));
    const size_t n = m.parameters;
    float *before = xmalloc(n * 4), *after = xmalloc(n * 4), *g = xcalloc(n, 4), *moment = xmalloc(n * 4);
    B->weights_download(D, before, m.weights, n);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) { /* a gradient that is not finite changes nothing */
        g[n - 1] = bad[i];
        model_zero_grads(&m);
        B->upload(D, m.grads, g, n * 4);
        assert_true(optimizer_step(&o, &m, 0.1).skipped);
        B->weights_download(D, after, m.weights, n);
        assert_memory_equal(after, before, n * 4);
        assert_true(o.step == 0 && B->square_sum(D, o.m, n) == 0 && B->square_sum(D, o.v, n) == 0);
        model_settle_grads(&m);
        assert_true(B->square_sum(D, m.grads, n) == 0);
    }
    o.weight_decay = 0.5; /* no gradient: weight decay alone, on matrices */
    assert_true(optimizer_step(&o, &m, 0.1).grad_norm == 0);
    B->weights_download(D, after, m.weights, n);
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (size_t k = m.tensor[i].offset; k < m.tensor[i].offset + m.tensor[i].size; k++)
            assert_true(fabs(after[k] - before[k] * (m.tensor[i].decay ? 0.95 : 1)) <= 1e-7 * fabs(before[k]));
    assert_true(!m.tensor[TENSOR_ln1w].decay && !m.tensor[TENSOR_qkvb].decay && m.tensor[TENSOR_wpe].decay &&
                m.tensor[TENSOR_fcw].decay);
    /* clipping: the first moment of a new optimizer is (1 - beta1) times the clipped gradient */
    static const double limit[] = {1, 0, 1e9};
    for (int k = 0; k < 3; k++) {
        optimizer_free(&o, &m);
        assert_true(optimizer_new(&o, &m, &e));
        assert_true(o.beta1 == 0.9 && o.beta2 == 0.999 && o.eps == 1e-8 && o.weight_decay == 0 && o.max_grad_norm == 1);
        o.max_grad_norm = limit[k];
        for (size_t i = 0; i < n; i++) g[i] = i % 2 ? 2.0f : -2.0f;
        model_zero_grads(&m);
        B->upload(D, m.grads, g, n * 4);
        const OptimizerResult r = optimizer_step(&o, &m, 1e-3);
        assert_true(fabs(r.grad_norm - 2 * sqrt(n)) < 1e-6 && !r.skipped);
        B->download(D, moment, o.m, n * 4);
        for (size_t i = 0; i < n; i++)
            assert_true(fabs(moment[i] - 0.1 * g[i] * (k ? 1 : 1 / (r.grad_norm + 1e-6))) <
                        1e-6 * fabs(moment[i]) + 1e-12);
    }
    free(before), free(after), free(g), free(moment);
    optimizer_free(&o, &m), model_free(&m);
}

/* A reference is a copy, which does not change when the model does. */
static void test_copy(void **state) {
    (void)state;
    Error e;
    Model m = random_model(small_config(4, 0), 52, 0.2), copy;
    Problem p = mixed_problem(52, m.config.vocab);
    Workspace w = train_workspace(&m, &p.batch, 0);
    assert_true(model_copy(&copy, &m, &e));
    const double loss = loss_of(&m, &w, &p);
    assert_true(loss_of(&copy, &w, &p) == loss && copy.grads == NULL);
    Optimizer o;
    assert_true(optimizer_new(&o, &m, &e));
    loss_and_gradient(&m, &w, &p);
    optimizer_step(&o, &m, 0.01);
    const double moved = loss_of(&m, &w, &p); /* the packed copies of the weights were updated */
    assert_true(moved < loss - 1e-3 && loss_of(&copy, &w, &p) == loss);
    model_free(&copy);
    assert_true(loss_of(&m, &w, &p) == moved);
    optimizer_free(&o, &m), workspace_free(&w, &m), problem_free(&p), model_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_forward),
        cmocka_unit_test(test_golden_gradient),
        cmocka_unit_test(test_golden_adamw),
        cmocka_unit_test(test_differences),
        cmocka_unit_test(test_differences_grouped),
        cmocka_unit_test(test_differences_families),
        cmocka_unit_test(test_gradients_alone),
        cmocka_unit_test(test_recompute),
        cmocka_unit_test(test_packed_alone),
        cmocka_unit_test(test_shared_prefix),
        cmocka_unit_test(test_forward_backward),
        cmocka_unit_test(test_workspace_reuse),
        cmocka_unit_test(test_no_targets),
        cmocka_unit_test(test_forgotten_gradients),
        cmocka_unit_test(test_neftune),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_bf16_activations),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_config_check),
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_init),
        cmocka_unit_test(test_optimizer),
        cmocka_unit_test(test_copy),
    };
    return cmocka_run_group_tests_name("gpt2", tests, open_device_one_thread, close_device);
}
