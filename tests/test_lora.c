/* test_lora.c - low-rank adapters against a model whose weights are the sums W + scale B A, computed here in double. */
#include "../llmc/base/error.h"        /* xmalloc, Error */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/config.h"      /* ModelConfig, LORA_Q, LORA_ALL, LORA_DOWN, ... */
#include "../llmc/model/lora.h"        /* lora_parse_targets */
#include "../llmc/model/model.h"       /* Model, model_free, model_download, model_new, ... */
#include "../llmc/model/model_file.h"  /* model_load_as, MODEL_FLOAT32, model_save, model_load */
#include "../llmc/model/model_load.h"  /* model_file_free, ModelFile, ModelLoad, model_clear_padding */
#include "../llmc/model/optimizer.h"   /* optimizer_free, Optimizer, optimizer_new, optimizer_step */
#include "../llmc/model/pack.h"        /* batch_free */
#include "../llmc/model/tensors.h"     /* TENSOR_qkvla, TENSOR_qkvlb, TENSOR_qkvw, FIRST_LORA_TENSOR, ... */
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
                                       cmocka_unit_test(test_targets)};
    open_device_one_thread(NULL);
    files_setup(NULL);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    files_teardown(NULL);
    return failed + close_device(NULL);
}
