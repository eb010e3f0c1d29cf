/* test_peft.c - adapters in peft's folders, against log-probabilities of transformers and the bytes that peft writes
 * (dev/golden/golden_peft.py). */
#include "../llmc/base/error.h"        /* Error, xmalloc */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/model.h"       /* Model, model_free */
#include "../llmc/model/model_file.h"  /* model_load_as */
#include "../llmc/model/model_load.h"  /* ModelFile, ModelLoad, model_file_free */
#include "../llmc/model/pack.h"        /* batch_free, batch_new, batch_segment, batch_target */
#include "../llmc/model/peft.h"        /* peft_write */
#include "../llmc/model/safetensors.h" /* SafeTensor, Safetensors, safetensors_close, safetensors_find, ... */
#include "../llmc/model/transformer.h" /* ModelOutput, model_forward */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "cpu_device.h"                /* B, D, close_device, open_device_one_thread */
#include "files.h"                     /* files_get, files_assert_error, files_path, files_put, ... */

static const char *const names[] = {"llama-a", "qwen3", "phi3", "gpt2"};
enum { NAMES = sizeof names / sizeof *names };

static const char *folder(const char *kind, const char *name) {
    static char path[2][256];
    static int turn;
    char *to = path[turn++ % 2];
    snprintf(to, sizeof path[0], "tests/golden/%s/%s", kind, name);
    return to;
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
    if (!model_load_as(&m, f, folder("families", name), &how, B, D, NULL, &e)) fail_msg("%s", e.text);
    return m;
}

/* Log-probabilities of two sequences: a float32 pass is within 1e-5 of the float64 values, see test_gpt2.c. The random
 * adapters are scaled by up to 8 and make the weights some times as large, and rounding errors with them: 5e-5. */
static void check_logp(const char *name, const Model *m) {
    Error e;
    size_t n, sequences, targets;
    float *token = array_of(folder("families", name), "expected.safetensors", "token", &n);
    float *length = array_of(folder("families", name), "expected.safetensors", "length", &sequences);
    float *want = array_of(folder("peft", name), "logp.safetensors", "logp", &targets);
    Batch b = batch_new((int)n, (int)n, (int)sequences);
    Workspace w;
    float *logp = xmalloc(n * sizeof *logp);
    int32_t *ids = xmalloc(n * sizeof *ids);
    size_t at = 0, k = 0;
    assert_int_equal(targets, n);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)token[i];
    for (size_t s = 0; s < sequences; at += (size_t)length[s++]) {
        batch_segment(&b, ids + at, (int)length[s], 0, -1);
        for (size_t i = 0; i + 1 < (size_t)length[s]; i++) batch_target(&b, (int)(at + i), ids[at + i + 1]);
    }
    assert_true(workspace_new(&w, m, (int)n, (int)n, (int)sequences, false, 0, &e));
    model_forward(m, &w, &b, 1, &(ModelOutput){.logp = logp});
    at = 0;
    for (size_t s = 0; s < sequences; at += (size_t)length[s++])
        for (size_t i = 0; i + 1 < (size_t)length[s]; i++, k++)
            if (!(fabs(logp[k] - want[at + i]) < 5e-5))
                fail_msg("%s: token %zu: %g, transformers has %g", name, at + i, logp[k], want[at + i]);
    free(token), free(length), free(want), free(logp), free(ids), batch_free(&b), workspace_free(&w, m);
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
        if (!model_load_as(&again, &g, folder("families", names[i]), &how, B, D, NULL, &e)) fail_msg("%s", e.text);
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
    } bad[] = {{"\"use_dora\": false", "\"use_dora\": true", "DoRA is not supported"},
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
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests_name("peft", tests, setup, teardown);
}
