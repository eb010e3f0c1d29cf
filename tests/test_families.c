/* test_families.c - every family against transformers in float64: the tiny models of tests/golden/families
 * (dev/golden/golden_families.py).
 *
 * A float32 pass of two layers is a chain of some hundred sums with a relative error of a few 2^-24 each: 1e-5 for
 * log-probabilities of order 1 to 10. The backward pass doubles the chain: 1e-4 of a tensor's norm. */
#include "../llmc/base/error.h"              /* Error, xmalloc */
#include "../llmc/model/batch.h"             /* Batch */
#include "../llmc/model/config.h"            /* FAMILY_GPT2 */
#include "../llmc/model/huggingface_names.h" /* HuggingfacePart, HuggingfaceParts, huggingface_parts, ... */
#include "../llmc/model/model.h"             /* model_download, model_zero_grads, Model, model_free, ... */
#include "../llmc/model/model_file.h"        /* ModelFile, ModelLoad, model_file_free, model_load_as */
#include "../llmc/model/optimizer.h"         /* Optimizer, optimizer_configure, optimizer_free, optimizer_new, ... */
#include "../llmc/model/pack.h"              /* batch_free, batch_segment, batch_clear, batch_completion, ... */
#include "../llmc/model/safetensors.h"       /* SafeTensor, Safetensors, safetensors_close, safetensors_find, ... */
#include "../llmc/model/transformer.h"       /* ModelOutput, model_forward, model_forward_backward, ... */
#include "../llmc/model/workspace.h"         /* Workspace, workspace_free, workspace_new */
#include "../llmc/rollout/rollout.h"         /* Completion, Rollout, RolloutRequest, Sampling, ... */
#include "cpu_device.h"                      /* B, D, close_device, open_device_one_thread */

static const char *const names[] = {"gpt2",       "llama-a",       "llama-b",   "mistral", "qwen2",
                                    "qwen2-yarn", "qwen3",         "qwen3-odd", "smollm3", "olmo2",
                                    "phi3",       "phi3-longrope", "gemma2",    "gemma3"};
enum { NAMES = sizeof names / sizeof *names, ROWS_MAX = 64, PROMPT = 5, GREEDY = 16, STEPS = 10 };

/* The model, and the results of transformers. */
typedef struct Case {
    const char *name;
    Model m;
    ModelFile file;
    Safetensors want;
    int32_t token[ROWS_MAX];
    int length[2], rows;
} Case;

/* An array of the results, in new memory. */
static float *result(const Case *k, const char *kind, const char *name, size_t *n) {
    char full[256];
    snprintf(full, sizeof full, "%s%s", kind, name);
    const SafeTensor *t = safetensors_find(&k->want, full);
    if (!t) fail_msg("%s: no %s", k->name, full);
    float *values = xmalloc((size_t)t->elements * sizeof *values);
    safetensors_floats(t, 0, values, (size_t)t->elements);
    *n = (size_t)t->elements;
    return values;
}

static Case case_open(const char *name, const char *expected) {
    Error e;
    Case k = {.name = name};
    char path[256];
    size_t n;
    snprintf(path, sizeof path, "tests/golden/families/%s", name);
    const ModelLoad how = {.gradients = true};
    if (!model_load_as(&k.m, &k.file, path, &how, B, D, NULL, &e)) fail_msg("%s", e.text);
    snprintf(path, sizeof path, "tests/golden/families/%s/%s", name, expected);
    if (!safetensors_open(&k.want, path, &e)) fail_msg("%s", e.text);
    float *token = result(&k, "token", "", &n), *length = result(&k, "length", "", &(size_t){0});
    k.rows = (int)n;
    assert_true(n <= ROWS_MAX);
    for (size_t i = 0; i < n; i++) k.token[i] = (int32_t)token[i];
    for (int i = 0; i < 2; i++) k.length[i] = (int)length[i];
    assert_int_equal(k.length[0] + k.length[1], k.rows);
    free(token), free(length);
    return k;
}

static void case_close(Case *k) { model_free(&k->m), model_file_free(&k->file), safetensors_close(&k->want); }

/* A batch of sequences first ... last, with a target in each row; the last one of a sequence has token 0 as target. */
static Batch batch_of(const Case *k, int first, int last) {
    Batch b = batch_new(ROWS_MAX, ROWS_MAX, 4);
    for (int s = first, at = first ? k->length[0] : 0; s <= last; at += k->length[s++]) {
        const int32_t *t = k->token + at;
        batch_segment(&b, t, k->length[s], 0, -1);
        for (int i = 0; i < k->length[s]; i++)
            batch_target(&b, b.rows - k->length[s] + i, i + 1 < k->length[s] ? t[i + 1] : 0);
    }
    return b;
}

static Workspace workspace_of(const Case *k, bool train, int recompute) {
    Error e;
    Workspace w;
    if (!workspace_new(&w, &k->m, ROWS_MAX, ROWS_MAX, 4, train, recompute, &e)) fail_msg("%s", e.text);
    return w;
}

/* Whether row i of all rows is the last of its sequence, which has no target. */
static bool last_row(const Case *k, int i) { return i == k->length[0] - 1 || i == k->rows - 1; }

static void assert_logp(const Case *k, const float *logp, const float *want, int from, int n, const char *how) {
    for (int i = 0; i < n; i++)
        if (!last_row(k, from + i) && !(fabs(logp[i] - want[from + i]) < 1e-5))
            fail_msg("%s, %s: token %d: %.7g, transformers has %.7g", k->name, how, from + i, logp[i], want[from + i]);
}

/* Log-probabilities, entropies and logits: each sequence alone, both packed, and as two completions of one prompt. */
static void check_forward(const Case *k) {
    Error e;
    size_t n, rows;
    float *want = result(k, "logp", "", &n), *entropy = result(k, "entropy", "", &n);
    float *logits = result(k, "logits", "", &n), *row = result(k, "logits_row", "", &rows);
    float logp[ROWS_MAX], h[ROWS_MAX];
    Workspace w = workspace_of(k, false, 0);
    const size_t V = (size_t)k->m.config.vocab;
    float *all = xmalloc(ROWS_MAX * V * sizeof *all);
    for (int s = 0, at = 0; s < 2; at += k->length[s++]) {
        Batch b = batch_of(k, s, s);
        model_forward(&k->m, &w, &b, 1, &(ModelOutput){.logp = logp});
        assert_logp(k, logp, want, at, k->length[s], "alone");
        batch_free(&b);
    }
    Batch b = batch_of(k, 0, 1);
    model_forward(&k->m, &w, &b, 1, &(ModelOutput){.logp = logp, .entropy = h});
    assert_logp(k, logp, want, 0, k->rows, "packed");
    for (int i = 0; i < k->rows; i++)
        if (!(fabs(h[i] - entropy[i]) < 1e-5)) fail_msg("%s: entropy %d: %g, not %g", k->name, i, h[i], entropy[i]);
    assert_true(model_logits(&k->m, &w, &b, all, &e));
    for (size_t i = 0; i < rows; i++)
        for (size_t v = 0; v < V; v++)
            if (!(fabs(all[(size_t)row[i] * V + v] - logits[i * V + v]) < 2e-5))
                fail_msg("%s: logit %zu of row %g: %g, not %g", k->name, v, row[i], all[(size_t)row[i] * V + v],
                         logits[i * V + v]);
    batch_clear(&b);
    const int shared = 13, length = k->length[0]; /* longer than the windows of these models */
    const int prompt = batch_segment(&b, k->token, shared, 0, -1);
    for (int copy = 0; copy < 2; copy++)
        batch_completion(&b, prompt, k->token + shared, (length - shared) / (copy + 1));
    model_forward(&k->m, &w, &b, 1, &(ModelOutput){.logp = logp});
    for (int copy = 0, at = 0; copy < 2; at += (length - shared) / ++copy)
        assert_logp(k, logp + at, want, shared - 1, (length - shared) / (copy + 1), "after a shared prompt");
    free(want), free(entropy), free(logits), free(row), free(all), batch_free(&b), workspace_free(&w, &k->m);
}

/* Adds the gradients of the mean cross-entropy over all targets of both sequences. Returns it. */
static double loss_and_gradient(const Case *k, int recompute) {
    Workspace w = workspace_of(k, true, recompute);
    Batch b = batch_of(k, 0, 1);
    float logp[ROWS_MAX], dlogp[ROWS_MAX];
    double loss = 0;
    for (int i = 0; i < k->rows; i++) dlogp[i] = last_row(k, i) ? 0 : -1.0f / (float)(k->rows - 2);
    model_forward_backward(&k->m, &w, &b, 1, dlogp, &(ModelOutput){.logp = logp});
    for (int i = 0; i < k->rows; i++) loss += (double)dlogp[i] * logp[i];
    batch_free(&b), workspace_free(&w, &k->m);
    return loss;
}

/* The elements of a part of the file, from an array over all of the model's, in the order of the file. */
static float *part_of(const HuggingfacePart *p, const float *all) {
    float *values = xmalloc(p->rows * p->columns * sizeof *values);
    for (size_t i = 0; i < p->rows; i++)
        for (size_t j = 0; j < p->columns; j++)
            values[p->transposed ? j * p->rows + i : i * p->columns + j] = all[p->at + i * p->columns + j];
    return values;
}

/* Every gradient, under the names and in the shapes of the file, and the same at all levels of recomputation. A bias of
 * the keys has no exact gradient, because the softmax is invariant to it: 1e-4 of the queries' bias's. */
static void check_gradients(const Case *k) {
    float *g[3];
    size_t n;
    float *loss = result(k, "loss", "", &n);
    for (int recompute = 0; recompute < 3; recompute++) {
        model_zero_grads(&k->m);
        const double got = loss_and_gradient(k, recompute);
        assert_true(fabs(got - loss[0]) < 1e-5);
        g[recompute] = xmalloc(k->m.parameters * sizeof(float));
        B->download(D, g[recompute], k->m.grads, k->m.parameters * sizeof(float));
        if (recompute) assert_memory_equal(g[0], g[recompute], k->m.parameters * sizeof(float));
    }
    HuggingfaceParts parts =
        huggingface_parts(&k->m.config, k->m.config.family == FAMILY_GPT2 ? "transformer." : "model.");
    double of_queries = 0;
    for (size_t i = 0; i < parts.count; i++) {
        const HuggingfacePart *p = &parts.part[i];
        float *want = result(k, "grad.", p->name, &n), *got = part_of(p, g[0]);
        double norm = 0, gap = 0;
        assert_int_equal(n, p->rows * p->columns);
        for (size_t j = 0; j < n; j++) {
            norm += (double)want[j] * want[j];
            gap += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
        }
        if (strstr(p->name, "q_proj.bias")) of_queries = norm;
        if (strstr(p->name, "k_proj.bias")) norm = of_queries;
        if (!(sqrt(gap) < 1e-4 * sqrt(norm)))
            fail_msg("%s: gradient of %s is off by %g of %g", k->name, p->name, sqrt(gap), sqrt(norm));
        free(want), free(got);
    }
    huggingface_parts_free(&parts);
    free(loss);
    for (int i = 0; i < 3; i++) free(g[i]);
}

/* Ten steps of AdamW: the loss before each and after the last, and the weights. AdamW divides a gradient by its own
 * size, so the smallest gradients of a tensor, which are rounding error, also move a weight by the learning rate: of
 * the distance that a tensor moves, 1e-2 (of a bias of the keys, whose gradient is nothing else, all). */
static void check_adamw(Case *k) {
    Error e;
    Optimizer o;
    size_t n;
    const HuggingfaceParts parts =
        huggingface_parts(&k->m.config, k->m.config.family == FAMILY_GPT2 ? "transformer." : "model.");
    float *loss = result(k, "loss", "", &n), *before = xmalloc(k->m.parameters * sizeof(float));
    float *after = xmalloc(k->m.parameters * sizeof(float));
    assert_int_equal(n, STEPS + 1);
    assert_true(optimizer_new(&o, &k->m, &e));
    optimizer_configure(&o, 0.9, 0.999, 1e-8, 0.1, 0);
    model_download(&k->m, 0, before, k->m.parameters);
    model_zero_grads(&k->m);
    for (int step = 0; step <= STEPS; step++) {
        const double got = loss_and_gradient(k, 0);
        if (!(fabs(got - loss[step]) < 2e-5))
            fail_msg("%s: loss %g at step %d, not %g", k->name, got, step, loss[step]);
        if (step < STEPS) assert_false(optimizer_step(&o, &k->m, 1e-3).skipped);
    }
    model_download(&k->m, 0, after, k->m.parameters);
    for (size_t i = 0; i < parts.count; i++) {
        const HuggingfacePart *p = &parts.part[i];
        float *want = result(k, "adamw.", p->name, &n), *got = part_of(p, after), *old = part_of(p, before);
        double moved = 0, gap = 0;
        for (size_t j = 0; j < n; j++) {
            moved += ((double)want[j] - old[j]) * ((double)want[j] - old[j]);
            gap += ((double)want[j] - got[j]) * ((double)want[j] - got[j]);
        }
        const bool keys = strstr(p->name, "k_proj.bias") || strstr(p->name, "c_attn.bias");
        if (!(sqrt(gap) < (keys ? 2 : 1e-2) * sqrt(moved)))
            fail_msg("%s: %s is off by %g after moving %g", k->name, p->name, sqrt(gap), sqrt(moved));
        free(want), free(got), free(old);
    }
    HuggingfaceParts all = parts;
    huggingface_parts_free(&all);
    free(loss), free(before), free(after), optimizer_free(&o, &k->m);
}

/* Greedy decoding through the sampler, with its cache: token for token. */
static void check_greedy(const Case *k) {
    Error e;
    size_t n;
    Rollout r;
    Completion out[3];
    float *want = result(k, "greedy", "", &n);
    int32_t prompt[PROMPT];
    assert_int_equal(n, PROMPT + GREEDY);
    for (int i = 0; i < PROMPT; i++) prompt[i] = (int32_t)want[i];
    RolloutRequest request = {prompt, PROMPT, 3, 0, out};
    Sampling s = sampling_default();
    s.temperature = 0;
    s.max_new = GREEDY;
    memset(out, 0, sizeof out);
    assert_true(rollout_new(&r, &k->m, 2, PROMPT, GREEDY, &e));
    if (!rollout_run(&r, &s, &request, 1, NULL, NULL, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(out[i].count, GREEDY);
        for (int t = 0; t < GREEDY; t++)
            if (out[i].tokens[t] != (int32_t)want[PROMPT + t])
                fail_msg("%s: token %d is %d, transformers has %g", k->name, t, out[i].tokens[t], want[PROMPT + t]);
        completion_free(&out[i]);
    }
    free(want), rollout_free(&r);
}

static void all_cases(void (*check)(Case *)) {
    for (int i = 0; i < NAMES; i++) {
        Case k = case_open(names[i], "expected.safetensors");
        check(&k);
        case_close(&k);
    }
}

static void forward_of(Case *k) { check_forward(k); }
static void gradients_of(Case *k) { check_gradients(k); }
static void greedy_of(Case *k) { check_greedy(k); }

static void test_forward(void **state) {
    (void)state;
    all_cases(forward_of);
}
static void test_gradients(void **state) {
    (void)state;
    all_cases(gradients_of);
}
static void test_adamw(void **state) {
    (void)state;
    all_cases(check_adamw);
}
static void test_greedy(void **state) {
    (void)state;
    all_cases(greedy_of);
}

/* A run whose context is not longer than the original one uses longrope's short list. */
static void test_short_context(void **state) {
    (void)state;
    Error e;
    Case k = case_open("phi3-longrope", "expected_short.safetensors");
    B->release(D, k.m.frequency);
    k.m.config.context = k.m.config.rope.original;
    assert_true(k.length[0] <= k.m.config.context && model_new_rotary(&k.m, &e));
    check_forward(&k);
    case_close(&k);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forward), cmocka_unit_test(test_gradients),
                                       cmocka_unit_test(test_adamw), cmocka_unit_test(test_greedy),
                                       cmocka_unit_test(test_short_context)};
    return cmocka_run_group_tests_name("families", tests, open_device_one_thread, close_device);
}
