/* test_peft.c - adapters in peft's folders, against log-probabilities of transformers and the bytes that peft writes
 * (dev/golden/golden_peft.py). */
#include "../llmc/base/error.h"        /* Error, xmalloc */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/config.h"      /* LORA_ALL */
#include "../llmc/model/lora.h"        /* lora_merged */
#include "../llmc/model/model.h"       /* Model, model_free, model_download, model_settle_grads */
#include "../llmc/model/model_file.h"  /* model_load_as */
#include "../llmc/model/model_load.h"  /* ModelFile, model_file_free, ModelLoad */
#include "../llmc/model/optimizer.h"   /* Optimizer, optimizer_configure, optimizer_free, optimizer_new, ... */
#include "../llmc/model/pack.h"        /* batch_free, batch_new, batch_segment, batch_target */
#include "../llmc/model/peft.h"        /* PeftTensor, peft_tensors, peft_write */
#include "../llmc/model/safetensors.h" /* SafeTensor, Safetensors, safetensors_close, safetensors_find, ... */
#include "../llmc/model/tensors.h"     /* BASE_TENSORS */
#include "../llmc/model/transformer.h" /* ModelOutput, model_forward, model_forward_backward */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "cpu_device.h"                /* B, D, close_device, open_device_one_thread */
#include "files.h"                     /* files_get, files_assert_error, files_path, files_put, ... */

static const char *const names[] = {"llama-a", "qwen3", "phi3", "gpt2", "llama-a-dora", "qwen3-dora", "gpt2-dora"};
enum { NAMES = sizeof names / sizeof *names };

static const char *folder(const char *kind, const char *name) {
    static char path[2][256];
    static int turn;
    char *to = path[turn++ % 2];
    snprintf(to, sizeof path[0], "tests/golden/%s/%s", kind, name);
    return to;
}

/* The folder of the model that an adapter belongs to. */
static const char *base_of(const char *name) {
    static char path[256];
    const char *dora = strstr(name, "-dora");
    snprintf(path, sizeof path, "tests/golden/families/%.*s", (int)(dora ? dora - name : (long)strlen(name)), name);
    return path;
}

/* An array of a safetensors file as float32, in new memory. */
static float *array_of(const char *folder_name, const char *file, const char *name, size_t *n) {
    Error e;
    char path[512];
    Safetensors s;
    snprintf(path, sizeof path, "%s/%s", folder_name, file);
    if (!safetensors_open(&s, path, &e)) fail_msg("%s", e.text);
    const SafeTensor *t = safetensors_find(&s, name);
    assert_non_null(t);
    float *values = xmalloc((size_t)t->elements * sizeof *values);
    safetensors_floats(t, 0, values, (size_t)t->elements);
    *n = (size_t)t->elements;
    safetensors_close(&s);
    return values;
}

static Model model_with(const char *name, bool trained, ModelFile *f) {
    Error e;
    Model m;
    char adapter[256];
    snprintf(adapter, sizeof adapter, "%s", folder("peft", name));
    const ModelLoad how = {.gradients = trained, .adapter = adapter};
    if (!model_load_as(&m, f, base_of(name), &how, B, D, NULL, &e)) fail_msg("%s", e.text);
    return m;
}

/* All sequences of the model's golden values, whose lengths are written to length[2], and each token that follows one. */
static Batch golden_batch(const char *name, size_t length[2]) {
    size_t n, sequences, at = 0;
    float *token = array_of(base_of(name), "expected.safetensors", "token", &n);
    float *lengths = array_of(base_of(name), "expected.safetensors", "length", &sequences);
    Batch b = batch_new((int)n, (int)n, (int)sequences);
    int32_t *ids = xmalloc(n * sizeof *ids);
    assert_int_equal(sequences, 2);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)token[i];
    for (size_t s = 0; s < sequences; at += length[s++]) {
        length[s] = (size_t)lengths[s];
        batch_segment(&b, ids + at, (int)length[s], 0, -1);
        for (size_t i = 0; i + 1 < length[s]; i++) batch_target(&b, (int)(at + i), ids[at + i + 1]);
    }
    free(token), free(lengths), free(ids);
    return b;
}

/* Log-probabilities of two sequences: a float32 pass is within 1e-5 of the float64 values, see test_gpt2.c. The random
 * adapters are scaled by up to 8 and make the weights some times as large, and rounding errors with them: 5e-5. */
static void check_logp(const char *name, const Model *m) {
    Error e;
    size_t length[2], targets;
    float *want = array_of(folder("peft", name), "logp.safetensors", "logp", &targets);
    Batch b = golden_batch(name, length);
    const int n = b.rows;
    Workspace w;
    float *logp = xmalloc((size_t)n * sizeof *logp);
    size_t at = 0, k = 0;
    assert_int_equal(targets, n);
    assert_true(workspace_new(&w, m, n, n, 2, false, 0, &e));
    model_forward(m, &w, &b, 1, &(ModelOutput){.logp = logp});
    for (size_t s = 0; s < 2; at += length[s++])
        for (size_t i = 0; i + 1 < length[s]; i++, k++)
            if (!(fabs(logp[k] - want[at + i]) < 5e-5))
                fail_msg("%s: token %zu: %g, transformers has %g", name, at + i, logp[k], want[at + i]);
    free(want), free(logp), batch_free(&b), workspace_free(&w, m);
}

/* The mean cross-entropy of the batch and its gradients. */
static void learn(Model *m, const Batch *b) {
    Error e;
    Workspace w;
    float *dlogp = xmalloc((size_t)b->targets * sizeof *dlogp);
    for (int i = 0; i < b->targets; i++) dlogp[i] = -1.0f / (float)b->targets;
    assert_true(workspace_new(&w, m, b->rows, b->targets, b->segments, true, 0, &e));
    model_forward_backward(m, &w, b, 1, dlogp, &(ModelOutput){0});
    free(dlogp), workspace_free(&w, m);
}

/* Checks all adapters against arrays of train.safetensors: every element within `tolerance` of the largest. values: those
 * of all trained tensors, of which PeftTensor.at - first is the place. */
static void check_trained(const char *name, const char *prefix, const Model *m, const float *values, double tolerance) {
    size_t count, first = m->tensor[BASE_TENSORS].offset;
    PeftTensor *list = peft_tensors(&m->config, &count);
    for (size_t i = 0; i < count; i++) {
        char key[160];
        size_t n;
        double most = 0, worst = 0;
        snprintf(key, sizeof key, "%s.%s", prefix, list[i].name);
        float *want = array_of(folder("peft", name), "train.safetensors", key, &n);
        assert_int_equal(n, list[i].rows * list[i].columns);
        for (size_t k = 0; k < n; k++) {
            most = fmax(most, fabs(want[k]));
            worst = fmax(worst, fabs((double)want[k] - values[list[i].at - first + k]));
        }
        if (!(worst <= tolerance * most)) fail_msg("%s %s: off by %g of %g", name, key, worst, most);
        free(want);
    }
    free(list);
}

/* DoRA's gradients, with the lengths of rows as constants, are peft's, 1e-4 as in test_families.c; and so are the adapters
 * after 5 steps of AdamW, each of which moves an element by up to 1e-2: an element whose gradient is near 0 takes other
 * steps, 2e-3 of the largest in all. */
static void test_dora_training(void **state) {
    (void)state;
    Error e;
    for (int i = 0; i < NAMES; i++) {
        if (!strstr(names[i], "-dora")) continue;
        ModelFile f;
        Optimizer o;
        size_t length[2];
        Model m = model_with(names[i], true, &f);
        Batch b = golden_batch(names[i], length);
        float *values = xmalloc(m.grads_count * sizeof *values);
        assert_true(m.config.lora.dora && optimizer_new(&o, &m, &e));
        optimizer_configure(&o, 0.9, 0.999, 1e-8, 0.1, 0);
        for (int step = 0; step < 5; step++) {
            learn(&m, &b);
            if (step == 0) {
                model_settle_grads(&m);
                B->download(D, values, m.grads, m.grads_count * sizeof *values);
                check_trained(names[i], "grad", &m, values, 1e-4);
            }
            assert_false(optimizer_step(&o, &m, 1e-2).skipped);
        }
        model_download(&m, m.tensor[BASE_TENSORS].offset, values, m.grads_count);
        check_trained(names[i], "adamw", &m, values, 2e-3);
        free(values), batch_free(&b), optimizer_free(&o, &m), model_free(&m), model_file_free(&f);
    }
}

/* The values of quantised matrices, and those in float32, with the same DoRA: the merged outputs agree. */
static void test_dora_merged(void **state) {
    (void)state;
    Error e;
    ModelFile f, g;
    Model m = model_with("llama-a-dora", true, &f), merged = model_with("llama-a-dora", false, &g);
    const size_t n = merged.parameters;
    float *sums = xmalloc(n * sizeof *sums), *want = xmalloc(n * sizeof *want);
    lora_merged(&m, 0, sums, n);
    model_download(&merged, 0, want, n);
    for (size_t i = 0; i < n; i++) assert_true(fabs((double)sums[i] - want[i]) <= 1e-6 * (1 + fabs(want[i])));
    /* any part of the merged weights */
    lora_merged(&m, n / 3, want, n / 3);
    assert_memory_equal(want, sums + n / 3, n / 3 * sizeof *want);
    free(sums), free(want);
    model_free(&m), model_file_free(&f), model_free(&merged), model_file_free(&g);
    /* new adapters change nothing: the magnitudes are the lengths */
    const ModelLoad how = {.gradients = true, .lora = {.rank = 2, .targets = LORA_ALL, .scale = 2, .dora = 1}};
    float logp[2][128];
    size_t length[2];
    Batch b = golden_batch("llama-a", length);
    if (!model_load_as(&m, &f, base_of("llama-a"), &how, B, D, NULL, &e)) fail_msg("%s", e.text);
    for (int off = 0; off < 2; off++) {
        Workspace w;
        m.adapter_off = off;
        assert_true(workspace_new(&w, &m, b.rows, b.targets, b.segments, false, 0, &e));
        model_forward(&m, &w, &b, 1, &(ModelOutput){.logp = logp[off]});
        workspace_free(&w, &m);
    }
    assert_memory_equal(logp[0], logp[1], (size_t)b.targets * sizeof(float));
    batch_free(&b), model_free(&m), model_file_free(&f);
}

/* A trained model keeps the adapters apart; any other has their sum in its weights. */
static void test_logp(void **state) {
    (void)state;
    for (int i = 0; i < NAMES; i++)
        for (int trained = 0; trained < 2; trained++) {
            ModelFile f;
            Model m = model_with(names[i], trained, &f);
            assert_true((m.config.lora.rank > 0) == trained);
            check_logp(names[i], &m);
            model_free(&m), model_file_free(&f);
        }
}

/* Writing gives the bytes that peft wrote, and a configuration that means the same. */
static void test_write(void **state) {
    (void)state;
    Error e;
    for (int i = 0; i < NAMES; i++) {
        ModelFile f;
        Model m = model_with(names[i], true, &f), again;
        const char *out = files_path("adapter");
        if (!peft_write(&m, out, "base", &e)) fail_msg("%s", e.text);
        char path[512];
        size_t n, k;
        snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder("peft", names[i]));
        uint8_t *want = files_get(path, &n);
        snprintf(path, sizeof path, "%s/adapter_model.safetensors", out);
        uint8_t *got = files_get(path, &k);
        assert_int_equal(n, k);
        assert_memory_equal(want, got, n);
        free(want), free(got);
        const ModelLoad how = {.gradients = true, .adapter = out};
        ModelFile g;
        if (!model_load_as(&again, &g, base_of(names[i]), &how, B, D, NULL, &e)) fail_msg("%s", e.text);
        assert_memory_equal(&again.config.lora, &m.config.lora, sizeof m.config.lora);
        check_logp(names[i], &again);
        model_free(&m), model_file_free(&f), model_free(&again), model_file_free(&g);
    }
}

/* Copies an adapter's folder with one text of its configuration replaced. */
static const char *changed(const char *name, const char *from, const char *to) {
    char path[512];
    size_t n;
    const char *out = files_path("changed");
    mkdir(out, 0777);
    snprintf(path, sizeof path, "%s/adapter_config.json", folder("peft", name));
    uint8_t *text = files_get(path, &n);
    text[n] = 0;
    char *at = strstr((char *)text, from);
    if (!at) fail_msg("%s: no %s", path, from);
    char *all = xmalloc(n + strlen(to) + 1);
    sprintf(all, "%.*s%s%s", (int)(at - (char *)text), text, to, at + strlen(from));
    snprintf(path, sizeof path, "%s/adapter_config.json", out);
    files_put(path, all, strlen(all));
    free(text), free(all);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder("peft", name));
    uint8_t *tensors = files_get(path, &n);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", out);
    files_put(path, tensors, n);
    free(tensors);
    return out;
}

static void test_refused(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *message;
    } bad[] = {
        {"\"use_dora\": false", "\"use_dora\": true", "it has no tensor base_model.model.model.layers.0.mlp.down_proj"},
        {"\"bias\": \"none\"", "\"bias\": \"all\"", "bias is \"all\""},
        {"\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save"},
        {"\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 4}", "rank_pattern"},
        {"\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", "peft_type is IA3"},
        {"\"kasa_config\": null", "\"kasa_config\": {\"beta\": 1}", "kasa_config is not supported"},
        {"\"r\": 3", "\"r\": 4", "not an array of 4 x"},
        {"\"r\": 3", "\"r\": 0", "r must be"},
        {"\"r\": 3", "\"r\": 3000", "r must be"},
        {"\"lora_alpha\": 6", "\"lora_alpha\": null", "lora_alpha must be"},
        {"\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", "init_lora_weights is pissa"},
        {"\"bias\"", "bias\"", "adapter_config.json: line 7, column 6: "}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Error e = {""};
        Model m;
        ModelFile f;
        const ModelLoad how = {.adapter = changed("llama-a", bad[i].from, bad[i].to)};
        assert_false(model_load_as(&m, &f, folder("families", "llama-a"), &how, B, D, NULL, &e));
        files_assert_error(&e, bad[i].message);
    }
    /* an adapter of another model */
    Error e = {""};
    Model m;
    ModelFile f;
    ModelLoad how = {.adapter = "tests/golden/peft/phi3"};
    assert_false(model_load_as(&m, &f, folder("families", "llama-a"), &how, B, D, NULL, &e));
    files_assert_error(&e, "is no adapter of a projection of this model");
    how.adapter = "tests/golden/peft/none";
    assert_false(model_load_as(&m, &f, folder("families", "llama-a"), &how, B, D, NULL, &e));
    files_assert_error(&e, "adapter_config.json");
}

static int setup(void **state) { return files_setup(state) || open_device_one_thread(state); }
static int teardown(void **state) { return close_device(state) | files_teardown(state); }

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_logp), cmocka_unit_test(test_write),
                                       cmocka_unit_test(test_dora_training), cmocka_unit_test(test_dora_merged),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests_name("peft", tests, setup, teardown);
}
