/* test_lora.c - low-rank adapters against a model whose weights are the sums W + scale B A, computed here in double; DoRA also
 * against finite differences of that model. */
#include "../llmc/base/error.h"        /* xmalloc, Error, xcalloc */
#include "../llmc/base/random.h"       /* Random, random_normal, random_start */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/config.h"      /* ModelConfig, LORA_Q, LORA_ALL, LORA_DOWN, ... */
#include "../llmc/model/lora.h"        /* lora_parse_targets */
#include "../llmc/model/model.h"       /* Model, model_free, model_download, model_new, ... */
#include "../llmc/model/model_file.h"  /* model_load_as, MODEL_FLOAT32, model_save, model_load */
#include "../llmc/model/model_load.h"  /* model_file_free, ModelFile, ModelLoad, model_clear_padding */
#include "../llmc/model/optimizer.h"   /* optimizer_free, Optimizer, optimizer_new, optimizer_step */
#include "../llmc/model/pack.h"        /* batch_free */
#include "../llmc/model/tensors.h"     /* TENSOR_qkvla, TENSOR_qkvlb, TensorInfo, FIRST_LORA_TENSOR, ... */
#include "../llmc/model/transformer.h" /* ModelOutput, model_forward */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "adapted.h"                   /* ROWS, adapted_batch, adapted_pass, CONTEXT, ... */
#include "cpu_device.h"                /* B, D, close_device, open_device_one_thread */
#include "files.h"                     /* files_path, files_assert_error, files_setup, files_teardown */
#include "variants.h"                  /* variant_of */

/* A configuration, the projections with adapters, and the matrices and rows that these are, written out by hand. */
typedef struct Case {
    int variant; /* -1: GPT-2 */
    int32_t targets;
} Case;

static const Case cases[] = {
    {-1, LORA_ALL}, {0, LORA_ALL}, {1, LORA_Q | LORA_V}, {2, LORA_ALL}, {3, LORA_K | LORA_O | LORA_UP}, {1, LORA_DOWN}};
enum { CASES = sizeof cases / sizeof *cases };

static ModelConfig case_config(const Case *k) {
    ModelConfig c = gpt2_config(2, 4, 24, VOCAB, CONTEXT);
    if (k->variant >= 0) {
        variant_of(&c, k->variant);
        c.family = FAMILY_LLAMA;
    }
    c.lora = (LoraConfig){.rank = 3, .targets = k->targets, .scale = 0.7f};
    return c;
}

/* A model with random weights, also in b, which a new adapter sets to 0. */
static Model random_model(const ModelConfig *c, uint64_t seed) {
    Error e;
    Model m;
    if (!model_new(&m, c, B, D, true, &e)) fail_msg("%s", e.text);
    adapted_randomize(&m, seed);
    return m;
}

/* Each projection's flag, its matrix, its first row there and its rows. */
typedef struct Projection {
    int32_t flag;
    int weight, a, b, first, rows;
} Projection;

static int projections_of(const ModelConfig *c, Projection p[7]) {
    const int Q = c->heads * c->head_size, K = c->kv_heads * c->head_size, C = c->width, F = c->hidden;
    int n = 0;
    if (c->family == FAMILY_GPT2) {
        p[n++] = (Projection){LORA_Q, TENSOR_qkvw, TENSOR_qkvla, TENSOR_qkvlb, 0, Q + 2 * K};
        p[n++] = (Projection){LORA_O, TENSOR_attprojw, TENSOR_attla, TENSOR_attlb, 0, C};
        p[n++] = (Projection){LORA_UP, TENSOR_fcw, TENSOR_fcla, TENSOR_fclb, 0, F};
        p[n++] = (Projection){LORA_DOWN, TENSOR_fcprojw, TENSOR_fcprojla, TENSOR_fcprojlb, 0, C};
        return n;
    }
    p[n++] = (Projection){LORA_Q, TENSOR_qkvw, TENSOR_qkvla, TENSOR_qkvlb, 0, Q};
    p[n++] = (Projection){LORA_K, TENSOR_qkvw, TENSOR_qkvla, TENSOR_qkvlb, Q, K};
    p[n++] = (Projection){LORA_V, TENSOR_qkvw, TENSOR_qkvla, TENSOR_qkvlb, Q + K, K};
    p[n++] = (Projection){LORA_O, TENSOR_attprojw, TENSOR_attla, TENSOR_attlb, 0, C};
    p[n++] = (Projection){LORA_GATE, TENSOR_fcw, TENSOR_fcla, TENSOR_fclb, 0, F};
    p[n++] = (Projection){LORA_UP, TENSOR_fcw, TENSOR_fcla, TENSOR_fclb, F, F};
    p[n++] = (Projection){LORA_DOWN, TENSOR_fcprojw, TENSOR_fcprojla, TENSOR_fcprojlb, 0, C};
    return n;
}

/* A projection's adapter: rows of a and of b in the tensors, which hold only the targeted projections of a matrix. */
static void adapter_rows(const ModelConfig *c, const Projection *all, int n, int which, size_t *a, size_t *b) {
    *a = *b = 0;
    for (int i = 0; i < n && i < which; i++)
        if (all[i].a == all[which].a && (c->lora.targets & all[i].flag)) {
            *a += (size_t)c->lora.rank;
            *b += (size_t)all[i].rows;
        }
}

/* host: all tensors of a model with adapters; sums: those of the base with the adapters added. */
static void merge_double(const Model *m, const float *host, double *sums) {
    Projection p[7];
    const ModelConfig *c = &m->config;
    const int n = projections_of(c, p), r = c->lora.rank;
    for (size_t i = 0; i < m->tensor[FIRST_LORA_TENSOR].offset; i++) sums[i] = host[i];
    for (int k = 0; k < n; k++) {
        if (!(c->lora.targets & p[k].flag)) continue;
        const TensorInfo *w = &m->tensor[p[k].weight], *a = &m->tensor[p[k].a], *b = &m->tensor[p[k].b];
        size_t a_row, b_row;
        adapter_rows(c, p, n, k, &a_row, &b_row);
        for (size_t l = 0; l < w->layers; l++)
            for (size_t i = 0; i < (size_t)p[k].rows; i++)
                for (size_t j = 0; j < w->columns; j++) {
                    double sum = 0;
                    for (size_t q = 0; q < (size_t)r; q++)
                        sum += (double)host[b->offset + (l * b->rows + b_row + i) * (size_t)r + q] *
                               host[a->offset + (l * a->rows + a_row + q) * w->columns + j];
                    sums[w->offset + (l * w->rows + (size_t)p[k].first + i) * w->columns + j] +=
                        (double)c->lora.scale * sum;
                }
    }
}

/* The model without adapters that computes the same. */
static Model merged_model(const Model *m, bool gradients) {
    Error e;
    Model to;
    ModelConfig c = m->config;
    c.lora = (LoraConfig){0};
    if (!model_new(&to, &c, B, D, gradients, &e)) fail_msg("%s", e.text);
    float *host = xmalloc(m->parameters * sizeof *host);
    double *sums = xmalloc(to.parameters * sizeof *sums);
    model_download(m, 0, host, m->parameters);
    merge_double(m, host, sums);
    for (size_t i = 0; i < to.parameters; i++) host[i] = (float)sums[i];
    model_upload(&to, 0, host, to.parameters);
    free(host), free(sums);
    return to;
}

/* Log-probabilities equal those of the model with merged weights up to the rounding of a float32 pass, 1e-5 as for the
 * golden values of test_gpt2.c. By the chain rule the gradients follow from those of the merged weights:
 * dB = scale dW A^T and dA = scale B^T dW, again within 1e-4 of the largest of a tensor. */
static void check_against_merged(const Case *k) {
    const ModelConfig c = case_config(k);
    Model m = random_model(&c, 3), full = merged_model(&m, true);
    Batch b = adapted_batch(5);
    float logp[ROWS], same[ROWS];
    float *grads = xmalloc(m.grads_count * sizeof *grads), *all = xmalloc(full.grads_count * sizeof *all);
    float *host = xmalloc(m.parameters * sizeof *host);
    model_download(&m, 0, host, m.parameters);
    adapted_pass(&full, &b, 0, same, all);
    adapted_pass(&m, &b, 0, logp, grads);
    for (int i = 0; i < b.targets; i++)
        if (!(fabs(logp[i] - same[i]) < 1e-5)) fail_msg("target %d: %g, merged %g", i, logp[i], same[i]);
    assert_int_equal(m.grads_count, m.parameters - m.tensor[FIRST_LORA_TENSOR].offset);
    Projection p[7];
    const int n = projections_of(&c, p), r = c.lora.rank;
    int found = 0;
    for (int q = 0; q < n; q++) {
        if (!(c.lora.targets & p[q].flag)) continue;
        found++;
        const TensorInfo *w = &m.tensor[p[q].weight], *ta = &m.tensor[p[q].a], *tb = &m.tensor[p[q].b];
        size_t a_row, b_row;
        adapter_rows(&c, p, n, q, &a_row, &b_row);
        for (size_t l = 0; l < w->layers; l++) {
            const float *dw = all + w->offset + (l * w->rows + (size_t)p[q].first) * w->columns;
            const float *A = host + ta->offset + (l * ta->rows + a_row) * w->columns;
            const float *Bv = host + tb->offset + (l * tb->rows + b_row) * (size_t)r;
            const float *da = grads + m.grads_offset[p[q].a] + (l * ta->rows + a_row) * w->columns;
            const float *db = grads + m.grads_offset[p[q].b] + (l * tb->rows + b_row) * (size_t)r;
            double most = 0, worst = 0;
            for (size_t i = 0; i < (size_t)p[q].rows; i++)
                for (size_t j = 0; j < (size_t)r; j++) {
                    double want = 0;
                    for (size_t x = 0; x < w->columns; x++)
                        want += (double)c.lora.scale * dw[i * w->columns + x] * A[j * w->columns + x];
                    most = fmax(most, fabs(want));
                    worst = fmax(worst, fabs(want - db[i * (size_t)r + j]));
                }
            if (!(worst <= 1e-4 * most) || most == 0) fail_msg("%s: %g of %g", tb->name, worst, most);
            most = worst = 0;
            for (size_t j = 0; j < (size_t)r; j++)
                for (size_t x = 0; x < w->columns; x++) {
                    double want = 0;
                    for (size_t i = 0; i < (size_t)p[q].rows; i++)
                        want += (double)c.lora.scale * dw[i * w->columns + x] * Bv[i * (size_t)r + j];
                    most = fmax(most, fabs(want));
                    worst = fmax(worst, fabs(want - da[j * w->columns + x]));
                }
            if (!(worst <= 1e-4 * most) || most == 0) fail_msg("%s: %g of %g", ta->name, worst, most);
        }
    }
    assert_true(found > 0);
    free(grads), free(all), free(host);
    batch_free(&b), model_free(&m), model_free(&full);
}

static void test_against_merged(void **state) {
    (void)state;
    for (int k = 0; k < CASES; k++) check_against_merged(&cases[k]);
}

static void test_recompute(void **state) {
    (void)state;
    for (int k = 0; k < CASES; k++) {
        const ModelConfig c = case_config(&cases[k]);
        Model m = random_model(&c, 4);
        Batch b = adapted_batch(6);
        float logp[ROWS], *grads = xmalloc(m.grads_count * sizeof *grads);
        adapted_pass(&m, &b, 0, logp, grads);
        adapted_check_recompute(&m, &b, logp, grads);
        free(grads), batch_free(&b), model_free(&m);
    }
}

/* With the adapters off, a model equals its base bit for bit. */
static void test_adapter_off(void **state) {
    (void)state;
    Error e;
    for (int k = 0; k < CASES; k++) {
        ModelConfig c = case_config(&cases[k]);
        Model m = random_model(&c, 5), base;
        c.lora = (LoraConfig){0};
        assert_true(model_new(&base, &c, B, D, false, &e));
        float *host = xmalloc(m.parameters * sizeof *host), logp[3][ROWS];
        model_download(&m, 0, host, m.parameters);
        model_upload(&base, 0, host, base.parameters);
        Batch b = adapted_batch(7);
        Model off = m;
        off.adapter_off = true;
        const Model *of[] = {&base, &off, &m};
        for (int i = 0; i < 3; i++) {
            Workspace w;
            assert_true(workspace_new(&w, of[i], b.rows, b.targets, b.segments, false, 0, &e));
            model_forward(of[i], &w, &b, 1, &(ModelOutput){.logp = logp[i]});
            workspace_free(&w, of[i]);
        }
        assert_memory_equal(logp[0], logp[1], (size_t)b.targets * sizeof(float));
        assert_memory_not_equal(logp[0], logp[2], (size_t)b.targets * sizeof(float));
        free(host), batch_free(&b), model_free(&base), model_free(&m);
    }
}

static void test_rollout_logp(void **state) {
    (void)state;
    const ModelConfig c = case_config(&cases[1]);
    Model m = random_model(&c, 6);
    adapted_check_rollout(&m);
    model_free(&m);
}

/* ==== DoRA against finite differences ==== */

/* Each projection's magnitudes. */
static int magnitudes_of(const Projection *p) {
    switch (p->a) {
    case TENSOR_qkvla: return TENSOR_qkvlm;
    case TENSOR_attla: return TENSOR_attlm;
    case TENSOR_fcla: return TENSOR_fclm;
    default: return TENSOR_fcprojlm;
    }
}

/* sums: the base with its adapters added, as merge_double(). Sets norms, at the places of the magnitudes, to the lengths of
 * the adapted rows if `measure`; then multiplies each such row by its magnitude and divides it by its norm. */
static void scale_double(const Model *m, const float *host, bool measure, double *norms, double *sums) {
    Projection p[7];
    const ModelConfig *c = &m->config;
    const int n = projections_of(c, p);
    for (int k = 0; k < n; k++) {
        if (!(c->lora.targets & p[k].flag)) continue;
        const TensorInfo *w = &m->tensor[p[k].weight], *t = &m->tensor[magnitudes_of(&p[k])];
        size_t a_row, b_row;
        adapter_rows(c, p, n, k, &a_row, &b_row);
        for (size_t l = 0; l < w->layers; l++)
            for (size_t i = 0; i < (size_t)p[k].rows; i++) {
                const size_t at = t->offset + l * t->columns + b_row + i;
                double *row = sums + w->offset + (l * w->rows + (size_t)p[k].first + i) * w->columns, square = 0;
                for (size_t j = 0; j < w->columns; j++) square += row[j] * row[j];
                if (measure) norms[at] = sqrt(square);
                for (size_t j = 0; j < w->columns; j++) row[j] *= host[at] / norms[at];
            }
    }
}

/* What a finite difference needs: a model with DoRA, one without adapters, and the lengths of the rows at the centre. */
typedef struct Dual {
    const Model *adapted, *plain;
    Workspace *work; /* of plain */
    const Batch *batch;
    double *norms, *sums;
    float *merged;
} Dual;

/* Log-probabilities of the plain model with the weights (m / norms) (W + scale B A). */
static void dual_logp(const Dual *d, const float *host, bool measure, float *logp) {
    merge_double(d->adapted, host, d->sums);
    scale_double(d->adapted, host, measure, d->norms, d->sums);
    for (size_t i = 0; i < d->plain->parameters; i++) d->merged[i] = (float)d->sums[i];
    model_upload(d->plain, 0, d->merged, d->plain->parameters);
    model_forward(d->plain, d->work, d->batch, 1, &(ModelOutput){.logp = logp});
}

/* The derivative of adapted_pass()'s sum along `direction` of elements [at, at + n), by a fourth-order central
 * difference. */
static double dual_slope(const Dual *d, const float *host, const double *direction, size_t at, size_t n, double h) {
    static const double place[4] = {1, -1, 2, -2}, share[4] = {8, -8, -1, 1};
    float *moved = xmalloc(d->adapted->parameters * sizeof *moved), logp[ROWS];
    memcpy(moved, host, d->adapted->parameters * sizeof *moved);
    double slope = 0;
    for (int k = 0; k < 4; k++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) moved[at + i] = host[at + i] + (float)(h * place[k] * direction[i]);
        dual_logp(d, moved, false, logp);
        for (int i = 0; i < d->batch->targets; i++) sum += (i % 5 - 2) / 8.0 * logp[i];
        slope += share[k] * sum / (12 * h);
    }
    free(moved);
    return slope;
}

/* Compares one layer of one tensor of the adapters along its gradient and along random directions. The quotient multiplies
 * the rounding of the sum of logp / 8, some 1e-6, by 18 / (12 h); its truncation error is of order h^4. */
static void check_slopes(const Dual *d, const float *host, const float *g, int tensor, size_t l, Random *r) {
    const double h = 0.01;
    const TensorInfo *t = &d->adapted->tensor[tensor];
    const size_t n = t->rows * t->columns, at = t->offset + l * n;
    double *direction = xmalloc(n * sizeof *direction);
    g += d->adapted->grads_offset[tensor] + l * n;
    for (int way = 0; way < 3; way++) {
        double norm = 0, g_norm = 0, expected = 0;
        for (size_t k = 0; k < n; k++) {
            direction[k] = way ? random_normal(r) : (double)g[k];
            norm += direction[k] * direction[k];
            g_norm += (double)g[k] * g[k];
        }
        assert_true(g_norm > 0);
        for (size_t k = 0; k < n; k++) {
            direction[k] /= sqrt(norm);
            expected += direction[k] * g[k];
        }
        const double slope = dual_slope(d, host, direction, at, n, h);
        if (!(fabs(slope - expected) < 2e-3 * sqrt(g_norm) + 2e-6 / h))
            fail_msg("%s, layer %zu, %s: slope %g, gradient %g (its norm is %g)", t->name, l,
                     way ? "random" : "along the gradient", slope, expected, sqrt(g_norm));
    }
    free(direction);
}

/* The gradients of A, B and the magnitudes are the derivatives of a model without adapters whose rows are
 * m / n (W + scale B A), where the length n stays what it is at the centre: a constant, as in section 4.3 of the paper
 * (arXiv 2402.09353). */
static void check_dora(const Case *k, uint64_t seed) {
    ModelConfig c = case_config(k), plain = c;
    Error e;
    c.lora.dora = true;
    plain.lora = (LoraConfig){0};
    Model m = random_model(&c, seed), full;
    if (!model_new(&full, &plain, B, D, false, &e)) fail_msg("%s", e.text);
    Batch b = adapted_batch(seed);
    Workspace w;
    if (!workspace_new(&w, &full, b.rows, b.targets, b.segments, false, 0, &e)) fail_msg("%s", e.text);
    const size_t first = m.tensor[FIRST_DORA_TENSOR].offset;
    Random r = random_start(seed, 9);
    float *host = xmalloc(m.parameters * sizeof *host), *grads = xmalloc(m.grads_count * sizeof *grads);
    float logp[ROWS], same[ROWS];
    Dual d = {&m,
              &full,
              &w,
              &b,
              xcalloc(m.parameters, sizeof(double)),
              xmalloc(full.parameters * sizeof(double)),
              xmalloc(full.parameters * sizeof(float))};
    model_download(&m, 0, host, m.parameters);
    dual_logp(&d, host, true, logp);
    for (size_t i = first; i < m.parameters; i++) /* magnitudes between two thirds and four thirds of the lengths */
        if (d.norms[i] > 0) host[i] = (float)(d.norms[i] * (1 + random_normal(&r) / 9));
    model_upload(&m, 0, host, m.parameters);
    dual_logp(&d, host, true, same);
    adapted_pass(&m, &b, 0, logp, grads);
    for (int i = 0; i < b.targets; i++)
        if (!(fabs(logp[i] - same[i]) < 1e-5)) fail_msg("target %d: %g, merged %g", i, logp[i], same[i]);
    for (int i = FIRST_LORA_TENSOR; i < TENSOR_COUNT; i++)
        for (size_t l = 0; m.tensor[i].size && l < m.tensor[i].layers; l++) check_slopes(&d, host, grads, i, l, &r);
    free(host), free(grads), free(d.norms), free(d.sums), free(d.merged);
    workspace_free(&w, &full), batch_free(&b), model_free(&m), model_free(&full);
}

static void test_dora_differences(void **state) {
    (void)state;
    for (int k = 0; k < CASES; k++) check_dora(&cases[k], 13 + (uint64_t)k);
}

/* A step changes the adapters and the value head only; a new adapter changes nothing; its b is 0. */
static void test_training(void **state) {
    (void)state;
    Error e;
    ModelConfig c = case_config(&cases[1]);
    c.value_head = 1;
    Model m;
    Optimizer o;
    assert_true(model_new(&m, &c, B, D, true, &e));
    model_init(&m, 11);
    assert_true(optimizer_new(&o, &m, &e));
    const size_t base = m.tensor[TENSOR_valuew].offset;
    assert_int_equal(o.count, m.parameters - base);
    assert_int_equal(o.count, m.grads_count);
    float *before = xmalloc(m.parameters * sizeof *before), *after = xmalloc(m.parameters * sizeof *after);
    Batch b = adapted_batch(8);
    float logp[2][ROWS];
    float *grads = xmalloc(m.grads_count * sizeof *grads);
    model_download(&m, 0, before, m.parameters);
    for (size_t i = 0; i < m.tensor[TENSOR_qkvlb].size; i++)
        assert_true(before[m.tensor[TENSOR_qkvlb].offset + i] == 0);
    const float bound = (float)(1 / sqrt(24.0));
    float most = 0;
    for (size_t i = 0; i < m.tensor[TENSOR_qkvla].size; i++)
        most = fmaxf(most, fabsf(before[m.tensor[TENSOR_qkvla].offset + i]));
    assert_true(most <= bound && most > 0.9f * bound);
    adapted_pass(&m, &b, 0, logp[0], grads);
    Model off = m;
    off.adapter_off = true;
    Workspace w;
    assert_true(workspace_new(&w, &off, b.rows, b.targets, b.segments, false, 0, &e));
    model_forward(&off, &w, &b, 1, &(ModelOutput){.logp = logp[1]});
    workspace_free(&w, &off);
    assert_memory_equal(logp[0], logp[1], (size_t)b.targets * sizeof(float));
    assert_false(optimizer_step(&o, &m, 1e-2).skipped);
    model_download(&m, 0, after, m.parameters);
    assert_memory_equal(before, after, base * sizeof *before);
    const TensorInfo *lb = &m.tensor[TENSOR_fcprojlb];
    assert_memory_not_equal(before + lb->offset, after + lb->offset, lb->size * sizeof *before);
    free(before), free(after), free(grads), batch_free(&b);
    optimizer_free(&o, &m), model_free(&m);
}

static void assert_near(const float *a, const double *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(fabs(a[i] - b[i]) <= 1e-6)) fail_msg("weight %zu is %g, expected %g", i, a[i], b[i]);
}

/* The output has the merged weights. A training state has the adapters alone: it is no model, and continues with the model
 * that it began with. */
static void test_files(void **state) {
    (void)state;
    Error e;
    ModelConfig c = case_config(&cases[0]);
    Model m = random_model(&c, 12), out, again;
    ModelFile f = {.lineage = json_array()}, g;
    Optimizer o, p;
    model_clear_padding(&m, NULL);
    assert_true(optimizer_new(&o, &m, &e));
    Batch b = adapted_batch(9);
    float logp[ROWS], *grads = xmalloc(m.grads_count * sizeof *grads);
    adapted_pass(&m, &b, 0, logp, grads);
    optimizer_step(&o, &m, 1e-2);
    float *host = xmalloc(m.parameters * sizeof *host), *got = xmalloc(m.parameters * sizeof *got);
    double *sums = xmalloc(m.parameters * sizeof *sums);
    model_download(&m, 0, host, m.parameters);
    merge_double(&m, host, sums);
    const size_t base = m.tensor[FIRST_LORA_TENSOR].offset;
    Model bare = m;
    bare.config.lora.rank = 0; /* saves the base alone */
    const char *names[] = {"out.bin", "out.safetensors"};
    for (int i = 0; i < 2; i++) {
        if (!model_save(&m, &f, files_path(names[i]), MODEL_FLOAT32, NULL, NULL, &e)) fail_msg("%s", e.text);
        if (!model_load(&out, &g, files_path(names[i]), NULL, false, B, D, false, 0, NULL, &e)) fail_msg("%s", e.text);
        assert_int_equal(out.parameters, base);
        model_download(&out, 0, got, base);
        assert_near(got, sums, base);
        model_free(&out), model_file_free(&g);
    }
    if (!model_save(&m, &f, files_path("out.state"), MODEL_FLOAT32, &o, "{}", &e)) fail_msg("%s", e.text);
    model_tensors(&bare.config, bare.tensor);
    if (!model_save(&bare, &f, files_path("base.bin"), MODEL_FLOAT32, NULL, NULL, &e)) fail_msg("%s", e.text);
    ModelLoad how = {.gradients = true, .lora = c.lora, .resume = files_path("out.state")};
    const char *first = files_path("base.bin");
    if (!model_load_as(&again, &g, first, &how, B, D, &p, &e)) fail_msg("%s", e.text);
    model_download(&again, 0, got, m.parameters);
    assert_memory_equal(got, host, m.parameters * sizeof *host);
    assert_int_equal(p.count, o.count);
    assert_memory_equal(p.m, o.m, o.count * sizeof(float));
    assert_memory_equal(p.v, o.v, o.count * sizeof(float));
    assert_string_equal(g.trainer, "{}");
    model_file_free(&g), optimizer_free(&p, &again), model_free(&again);
    assert_false(model_load(&out, &g, how.resume, NULL, false, B, D, false, 0, NULL, &e));
    files_assert_error(&e, "out.state: holds the adapters of a training state and no model; give it with --resume");
    assert_false(model_load_as(&again, &g, NULL, &how, B, D, &p, &e));
    files_assert_error(&e, "out.state: holds adapters only; name the model");
    assert_false(model_load_as(&again, &g, files_path("out.bin"), &how, B, D, &p, &e)); /* the merged weights */
    files_assert_error(&e, "out.state: its adapters were trained on another model than that of -c");
    how.lora.rank = 4;
    assert_false(model_load_as(&again, &g, first, &how, B, D, &p, &e));
    files_assert_error(&e, "rank 3");
    how.lora.rank = 0;
    assert_false(model_load_as(&again, &g, first, &how, B, D, &p, &e));
    files_assert_error(&e, "rank 3");
    free(host), free(got), free(sums), free(grads), batch_free(&b);
    model_file_free(&f), optimizer_free(&o, &m), model_free(&m);
}

static void test_targets(void **state) {
    (void)state;
    Error e;
    int32_t t;
    assert_true(lora_parse_targets("all-linear", &t, &e) && t == LORA_ALL);
    assert_true(lora_parse_targets("q_proj,v_proj", &t, &e) && t == (LORA_Q | LORA_V));
    assert_true(lora_parse_targets("c_attn", &t, &e) && t == (LORA_Q | LORA_K | LORA_V));
    assert_true(lora_parse_targets("down_proj,gate_proj,up_proj,", &t, &e) && t == (LORA_GATE | LORA_UP | LORA_DOWN));
    static const char *const bad[] = {"", "q", "q_proj,,v_proj", "q_proj v_proj", "lm_head"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(lora_parse_targets(bad[i], &t, &e));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_merged), cmocka_unit_test(test_recompute),
                                       cmocka_unit_test(test_adapter_off),    cmocka_unit_test(test_rollout_logp),
                                       cmocka_unit_test(test_training),       cmocka_unit_test(test_files),
                                       cmocka_unit_test(test_targets),        cmocka_unit_test(test_dora_differences)};
    open_device_one_thread(NULL);
    files_setup(NULL);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    files_teardown(NULL);
    return failed + close_device(NULL);
}
