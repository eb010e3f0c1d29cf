/* test_model_file.c - models in files: weights are restored bit for bit, training continues as if it had not stopped,
 * and damaged files are refused with one line that names them. */
#include "../llmc/base/error.h"        /* Error, xmalloc, xstrdup, xrealloc */
#include "../llmc/base/io.h"           /* XXH3_64bits */
#include "../llmc/base/random.h"       /* Random, random_below, random_start, random_normal */
#include "../llmc/model/backend.h"     /* weights_at */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/checkpoint.h"  /* CheckpointWriter, checkpoint_commit, checkpoint_create, ... */
#include "../llmc/model/config.h"      /* ModelConfig, gpt2_config */
#include "../llmc/model/model.h"       /* Model, model_free, model_new */
#include "../llmc/model/model_load.h"  /* model_file_free, ModelFile, model_clear_padding */
#include "../llmc/model/optimizer.h"   /* Optimizer, optimizer_free, optimizer_new, optimizer_step */
#include "../llmc/model/tensors.h"     /* GPT2_FILE_TENSORS, TENSOR_fcb, TensorInfo */
#include "../llmc/model/transformer.h" /* ModelOutput, model_backward, model_forward */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "cpu_device.h"                /* B, D, close_device, open_device_one_thread */
#include "files.h"                     /* files_path, files_assert_error, files_put, files_get, ... */

#include "../llmc/model/model_file.h" /* MODEL_FLOAT32, model_load, model_save, MODEL_BF16, ... */
#include "../llmc/model/pack.h"       /* batch_clear, batch_free, batch_new, batch_sequence */
#include <sys/resource.h>

static ModelConfig config(int kv_heads, int value_head) {
    ModelConfig c = gpt2_config(2, 4, 16, 21, 12);
    c.kv_heads = kv_heads;
    c.value_head = value_head;
    if (kv_heads != 4) {
        c.hidden = 40;
        c.head_size = 6;
        c.tied = 0;
    }
    return c;
}

static float *floats_of(const void *device, size_t n) {
    float *x = xmalloc((n + 1) * sizeof *x);
    B->download(D, x, device, n * sizeof *x);
    return x;
}

/* A model with random weights, and a file with every other section. */
static Model sample_model(ModelConfig c, ModelFile *f, uint64_t seed) {
    Error e;
    Model m;
    assert_true(model_new(&m, &c, B, D, true, &e));
    float *host = xmalloc(m.parameters * sizeof *host);
    Random r = random_start(seed, 0);
    for (size_t i = 0; i < m.parameters; i++) host[i] = (float)random_normal(&r);
    B->weights_upload(D, m.weights, host, m.parameters);
    free(host);
    model_clear_padding(&m, NULL); /* as in every model; files of Hugging Face's layout lack these rows */
    *f = (ModelFile){
        .lineage = json_loads("[{\"stage\":\"train_sft\",\"parent\":\"00ff\"},{\"stage\":\"train_grpo\"}]", 0, NULL)};
    f->tokenizer_bytes = 300;
    f->tokenizer = xmalloc(300);
    for (int i = 0; i < 300; i++) ((uint8_t *)f->tokenizer)[i] = (uint8_t)(i * 7); /* includes zero bytes */
    f->chat_template = xstrdup("<|{role}|>\n{content}\xe2\x82\xac");
    f->reward = xstrdup("{\"mean\":0.25}"); /* stored with a value head only */
    return m;
}

static void save(const Model *m, const ModelFile *f, const char *path, ModelDtype type, const Optimizer *o,
                 const char *trainer) {
    Error e;
    if (!model_save(m, f, path, type, o, trainer, &e)) fail_msg("%s", e.text);
}

static Model load(const char *path, ModelFile *f, bool value_head, Optimizer *o) {
    Error e;
    Model m;
    if (!model_load(&m, f, path, NULL, value_head, B, D, true, 5, o, &e)) fail_msg("%s", e.text);
    return m;
}

/* The file must not load: one line names the file and contains `part`. Nothing remains allocated (ASan checks this). */
static void refused(const char *path, bool value_head, bool training, const char *part) {
    Error e = {""};
    Model m;
    ModelFile f;
    Optimizer o;
    assert_false(model_load(&m, &f, path, NULL, value_head, B, D, true, 5, training ? &o : NULL, &e));
    files_assert_error(&e, part);
    files_assert_error(&e, path);
    assert_true(m.weights == NULL && f.lineage == NULL && f.tokenizer == NULL);
}

static void assert_same_weights(const Model *a, const Model *b, size_t n) {
    float *x = floats_of(a->weights, n), *y = floats_of(b->weights, n);
    assert_memory_equal(x, y, n * sizeof *x);
    free(x), free(y);
}

static void assert_same_company(const ModelFile *a, const ModelFile *b) {
    assert_int_equal(a->tokenizer_bytes, b->tokenizer_bytes);
    assert_memory_equal(a->tokenizer, b->tokenizer, a->tokenizer_bytes);
    assert_string_equal(a->chat_template, b->chat_template);
    assert_true(b->reward ? b->head && !strcmp(a->reward, b->reward) : !b->head);
    assert_true(json_equal(a->lineage, b->lineage));
}

/* ==== Round trips ==== */

static void test_round_trip(void **state) {
    (void)state;
    static const char *const name[] = {"a.bin",         "b.bin.zst", "c.bin", "d.bin",
                                       "e.safetensors", "f.zst",     "g",     "h.safetensors"};
    for (int k = 0; k < 8; k++) {
        ModelFile f, g;
        const int head = k % 4 >= 2;
        Model m = sample_model(config(k % 2 ? 2 : 4, head), &f, (uint64_t)k);
        const char *path = files_path(name[k]);
        save(&m, &f, path, MODEL_FLOAT32, NULL, NULL);
        Model n = load(path, &g, head, NULL);
        assert_memory_equal(&n.config, &m.config, sizeof m.config);
        assert_same_weights(&m, &n, m.parameters);
        assert_same_company(&f, &g);
        assert_true(g.trainer == NULL && g.hash != 0);
        assert_true(B->square_sum(D, n.grads, n.parameters) == 0);
        const char *again = files_path(k < 4 ? "again.bin" : "again"); /* the loaded model is saved as the same bytes */
        save(&n, &g, again, MODEL_FLOAT32, NULL, NULL);
        if (k % 4 != 1) {
            size_t size;
            uint8_t *bytes = files_get(path, &size);
            files_assert_content(again, bytes, size);
            assert_true(g.hash == XXH3_64bits(bytes, size)); /* the hash identifies the parent in a lineage */
            free(bytes);
        }
        model_free(&m), model_free(&n), model_file_free(&f), model_file_free(&g);
    }
}

static void test_special_numbers(void **state) {
    (void)state;
    static const float special[] = {-0.0f, 1e-45f, -3.3e38f, 0x1.ff7p100f};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        ModelFile f, g;
        Model m = sample_model(config(4, 0), &f, 9);
        B->weights_upload(D, m.weights, special, sizeof special / sizeof *special);
        save(&m, &f, files_path("special.bin"), bf16 ? MODEL_BF16 : MODEL_FLOAT32, NULL, NULL);
        Model n = load(files_path("special.bin"), &g, false, NULL);
        if (!bf16) assert_same_weights(&m, &n, m.parameters);
        else {
            float *x = floats_of(n.weights, 4);
            assert_true(x[0] == 0 && signbit(x[0]) && x[1] == 0 && x[2] < -3.2e38f);
            free(x);
        }
        model_free(&m), model_free(&n), model_file_free(&f), model_file_free(&g);
    }
}

/* A weight that is not finite is named when the model is loaded, in every format. */
static void test_weights_that_are_not_finite(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    const char *const names[] = {"bad.bin", "bad.safetensors", "bad.gguf"};
    for (int i = 0; i < 9; i++) {
        Error e;
        ModelFile f, g;
        Model n, m = sample_model(config(4, 0), &f, 9);
        const TensorInfo *t = &m.tensor[TENSOR_fcb];
        B->weights_upload(D, weights_at(B, m.weights, t->offset + t->columns * t->rows + 3), &bad[i % 3], 1);
        if (!model_save(&m, &f, files_path(names[i / 3]), MODEL_FLOAT32, NULL, NULL, &e)) {
            assert_int_equal(i / 3, 2); /* GGUF refuses to write it */
        } else {
            assert_false(model_load(&n, &g, files_path(names[i / 3]), NULL, false, B, D, false, 0, NULL, &e));
            files_assert_error(&e, "the weight fcb of layer 1 has the value");
        }
        model_free(&m), model_file_free(&f);
    }
}

static void test_bf16(void **state) {
    (void)state;
    ModelFile f, g, h;
    Model m = sample_model(config(2, 1), &f, 3);
    save(&m, &f, files_path("half.bin"), MODEL_BF16, NULL, NULL);
    Model n = load(files_path("half.bin"), &g, true, NULL);
    float *x = floats_of(m.weights, m.parameters), *y = floats_of(n.weights, n.parameters);
    for (size_t i = 0; i < m.parameters; i++) {
        int exponent;
        const double fraction = frexp(x[i], &exponent); /* 8 bits, to nearest; the value head is stored in full */
        const double want =
            i < m.tensor[GPT2_FILE_TENSORS].offset ? ldexp(nearbyint(fraction * 256), exponent - 8) : x[i];
        assert_true(y[i] == want);
    }
    assert_same_company(&f, &g);
    save(&n, &g, files_path("half2.bin"), MODEL_BF16, NULL, NULL); /* rounding a second time changes nothing */
    Model o = load(files_path("half2.bin"), &h, true, NULL);
    assert_same_weights(&n, &o, n.parameters);
    assert_true(g.hash == h.hash);
    free(x), free(y), model_free(&m), model_free(&n), model_free(&o);
    model_file_free(&f), model_file_free(&g), model_file_free(&h);
}

/* A file with weights only: no tokenizer, no template, no lineage. */
static void test_bare(void **state) {
    (void)state;
    ModelFile f, g;
    Model m = sample_model(config(4, 0), &f, 4);
    model_file_free(&f);
    save(&m, &f, files_path("bare.bin"), MODEL_FLOAT32, NULL, NULL);
    Model n = load(files_path("bare.bin"), &g, false, NULL);
    assert_same_weights(&m, &n, m.parameters);
    assert_true(g.tokenizer == NULL && g.chat_template == NULL && json_array_size(g.lineage) == 0 &&
                json_is_array(g.lineage));
    model_free(&m), model_free(&n), model_file_free(&g);
}

/* llm.c's own file, which ends after the weights. */
static void test_without_trailer(void **state) {
    (void)state;
    ModelFile f;
    Optimizer o;
    size_t size;
    uint8_t *bytes = files_get("tests/golden/gpt2_tiny.bin", &size);
    Model m = load("tests/golden/gpt2_tiny.bin", &f, false, &o);
    float *x = floats_of(m.weights, m.parameters);
    assert_int_equal(size, 1024 + m.parameters * sizeof *x);
    assert_memory_equal(bytes + 1024, x, m.parameters * sizeof *x);
    assert_true(f.hash == XXH3_64bits(bytes, size));
    assert_true(B->square_sum(D, o.m, m.parameters) == 0 && B->square_sum(D, o.v, m.parameters) == 0);
    free(x), free(bytes), optimizer_free(&o, &m), model_free(&m), model_file_free(&f);
}

static void test_streams(void **state) {
    (void)state;
    ModelFile f, g;
    size_t size;
    Model m = sample_model(config(2, 1), &f, 5);
    files_catch_stdout(files_path("out.bin"));
    Error e;
    const bool ok = model_save(&m, &f, "-", MODEL_FLOAT32, NULL, NULL, &e);
    files_restore(1);
    assert_true(ok);
    uint8_t *bytes = files_get(files_path("out.bin"), &size);
    files_feed_stdin(bytes, size, 999);
    Model n = load("-", &g, true, NULL);
    files_restore(0);
    assert_same_weights(&m, &n, m.parameters);
    assert_same_company(&f, &g);
    free(bytes), model_free(&m), model_free(&n), model_file_free(&f), model_file_free(&g);
}

/* ==== The value head ==== */

static void test_value_head(void **state) {
    (void)state;
    ModelFile f, g;
    Model m = sample_model(config(4, 1), &f, 6);
    const size_t file = m.tensor[GPT2_FILE_TENSORS].offset;
    save(&m, &f, files_path("head.bin"), MODEL_FLOAT32, NULL, NULL);
    Model n = load(files_path("head.bin"), &g, false, NULL); /* not requested: ignored */
    assert_true(n.config.value_head == 0 && n.parameters == file);
    assert_same_weights(&m, &n, file);
    save(&n, &f, files_path("headless.bin"), MODEL_FLOAT32, NULL, NULL);
    model_file_free(&g);
    Model a = load(files_path("headless.bin"), &g, true, NULL); /* requested but absent: a new one */
    assert_true(a.config.value_head == 1 && a.parameters == file + 17);
    assert_same_weights(&m, &a, file);
    float *x = floats_of(a.weights, a.parameters), squares = 0;
    for (size_t i = file; i < a.parameters - 1; i++) squares += x[i] * x[i];
    assert_true(squares > 0.1f && squares < 4 && x[a.parameters - 1] == 0);
    model_file_free(&g);
    Model b = load(files_path("headless.bin"), &g, true, NULL); /* from the seed */
    assert_same_weights(&a, &b, a.parameters);
    free(x), model_free(&m), model_free(&n), model_free(&a), model_free(&b), model_file_free(&f), model_file_free(&g);
}

/* ==== Training states ==== */

static void train(Model *m, Optimizer *o, int from, int to) {
    Error e;
    Workspace w;
    Batch b = batch_new(24, 24, 4);
    assert_true(workspace_new(&w, m, 24, 24, 4, true, 0, &e));
    for (int step = from; step < to; step++) {
        float dlogp[24], dvalue[24], logp[24], value[24];
        batch_clear(&b);
        Random r = random_start(77, (uint64_t)step);
        for (int s = 0; s < 2; s++) {
            int32_t t[12];
            for (int i = 0; i < 12; i++) t[i] = (int32_t)random_below(&r, 21);
            batch_sequence(&b, t, NULL, 12);
        }
        for (int i = 0; i < b.targets; i++) {
            dlogp[i] = -1.0f / (float)b.targets;
            dvalue[i] = 0.1f;
        }
        model_forward(m, &w, &b, 1, &(ModelOutput){.logp = logp, .value = value});
        model_backward(m, &w, &b, 1, dlogp, NULL, dvalue);
        assert_false(optimizer_step(o, m, 0.01).skipped);
    }
    workspace_free(&w, m), batch_free(&b);
}

static void test_resume(void **state) {
    (void)state;
    Error e;
    ModelFile f, g;
    Optimizer o, p;
    Model m = sample_model(config(2, 1), &f, 7);
    assert_true(optimizer_new(&o, &m, &e));
    train(&m, &o, 0, 3);
    const char *path = files_path("run.state");
    save(&m, &f, path, MODEL_FLOAT32, &o, "{\"step\":3}");
    float *m1 = floats_of(o.m, m.parameters), *v1 = floats_of(o.v, m.parameters);
    train(&m, &o, 3, 6);
    Model n = load(path, &g, true, &p);
    assert_string_equal(g.trainer, "{\"step\":3}");
    assert_same_company(&f, &g);
    float *m2 = floats_of(p.m, m.parameters), *v2 = floats_of(p.v, m.parameters);
    assert_memory_equal(m1, m2, m.parameters * sizeof *m1);
    assert_memory_equal(v1, v2, m.parameters * sizeof *v1);
    assert_true(m1[0] != 0 && v1[m.parameters - 1] != 0);
    p.step = 3; /* a counter that the trainer stores */
    train(&n, &p, 3, 6);
    assert_same_weights(&m, &n, m.parameters); /* bit for bit as if it had never stopped */
    ModelFile h;
    Model q = load(path, &h, false, NULL); /* a state is also a checkpoint */
    assert_string_equal(h.trainer, "{\"step\":3}");
    free(m1), free(v1), free(m2), free(v2);
    optimizer_free(&o, &m), optimizer_free(&p, &n), model_free(&m), model_free(&n), model_free(&q);
    model_file_free(&f), model_file_free(&g), model_file_free(&h);
    refused(path, false, true, "optimizer moments of"); /* moments with a head, for a model without one */
}

/* ==== New models ==== */

static void test_new_models(void **state) {
    (void)state;
    Error e = {""};
    Model m, n;
    ModelFile f, g;
    Optimizer o;
    ModelConfig c = config(2, 0);
    assert_true(model_load(&m, &f, NULL, &c, true, B, D, true, 3, &o, &e)); /* a shape */
    assert_true(m.config.value_head == 1 && m.config.kv_heads == 2 && f.hash == 0 && json_array_size(f.lineage) == 0);
    assert_true(model_load(&n, &g, NULL, &c, true, B, D, false, 3, NULL, &e));
    assert_same_weights(&m, &n, m.parameters);
    optimizer_free(&o, &m), model_free(&m), model_free(&n), model_file_free(&f), model_file_free(&g);
    assert_true(model_load(&m, &f, "d1", NULL, false, B, D, false, 3, NULL, &e)); /* a descriptor */
    assert_true(m.config.layers == 1 && m.config.width == 64 && m.config.vocab == 50257);
    model_free(&m), model_file_free(&f);
    refused("d0", false, false, "no GPT-2 of that size");
    refused("gpt2:c77", false, true, "no GPT-2 of that size");
    c = gpt2_config(2, 3, 16, 21, 12);
    assert_false(model_load(&m, &f, NULL, &c, false, B, D, false, 3, NULL, &e));
    files_assert_error(&e, "model shape: width 16 is not a multiple of 3 heads");
}

/* ==== Damage ==== */

/* A state with every section, as bytes. */
static uint8_t *whole_state(size_t *size) {
    Error e;
    ModelFile f;
    Optimizer o;
    Model m = sample_model(config(2, 1), &f, 8);
    assert_true(optimizer_new(&o, &m, &e));
    train(&m, &o, 0, 1);
    save(&m, &f, files_path("whole.state"), false, &o, "{\"step\":1}");
    optimizer_free(&o, &m), model_free(&m), model_file_free(&f);
    return files_get(files_path("whole.state"), size);
}

static void test_truncated(void **state) {
    (void)state;
    size_t size;
    uint8_t *bytes = whole_state(&size);
    const char *path = files_path("short.state");
    Random r = random_start(1, 1);
    for (int k = 0; k < 200; k++) {
        const size_t n = k < 40 ? (size_t)k : k < 100 ? size - 1 - (size_t)(k - 40) : (size_t)random_below(&r, size);
        files_put(path, bytes, n);
        refused(path, true, true, "");
        files_put(path, bytes, n);
        refused(path, k % 2, false, "");
    }
    bytes = xrealloc(bytes, size + 1, 1);
    bytes[size] = 0;
    files_put(path, bytes, size + 1); /* and with extra bytes after the end */
    refused(path, true, true, "");
    free(bytes);
}

static void test_flipped(void **state) {
    (void)state;
    size_t size;
    uint8_t *bytes = whole_state(&size);
    const char *path = files_path("flipped.state");
    Random r = random_start(1, 2);
    for (int k = 0; k < 400; k++) { /* every byte of the header and of the end, and some of the rest */
        const size_t at = k < 128   ? (size_t)k / 2
                          : k < 230 ? size - 1 - (size_t)(k - 128)
                                    : (size_t)random_below(&r, size);
        const uint8_t bit = (uint8_t)(1 << random_below(&r, 8));
        bytes[at] ^= bit;
        files_put(path, bytes, size);
        refused(path, true, true, "");
        bytes[at] ^= bit;
    }
    files_put(path, bytes, size);
    ModelFile f;
    Optimizer o;
    Model m = load(path, &f, true, &o);
    optimizer_free(&o, &m), model_free(&m), model_file_free(&f), free(bytes);
}

/* A checkpoint with sections chosen by the test. */
static const char *with_section(const char *name, const char *tag, const void *data, size_t n) {
    Error e;
    ModelFile f;
    CheckpointWriter w;
    const char *path = files_path(name);
    Model m = sample_model(config(4, 0), &f, 10);
    float *x = floats_of(m.weights, m.parameters);
    assert_true(checkpoint_create(&w, path, &m.config, false, &e) && checkpoint_put_weights(&w, x, m.parameters, &e));
    assert_true(checkpoint_put_section(&w, tag, data, n, &e) && checkpoint_commit(&w, &e));
    free(x), model_free(&m), model_file_free(&f);
    return path;
}

static void test_bad_sections(void **state) {
    (void)state;
    static const char *const lines[] = {"", "{", "{}", "3", "null", "\"x\"", "[1,2", "[] []", "[\"\xff\"]"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        refused(with_section("line.bin", "LINE", lines[i], strlen(lines[i])), false, false,
                "lineage is not a JSON array");
    char deep[5000];
    memset(deep, '[', sizeof deep);
    refused(with_section("deep.bin", "LINE", deep, sizeof deep), false, false, "lineage");
    refused("tests/golden/gpt2_tiny.txt", false, false, "");
    refused(files_path("missing.bin"), false, true, "No such file");
    refused(files_directory, false, false, "");
    ModelFile f;
    Model m;
    m = load(with_section("future.bin", "ZZZZ", deep, 100), &f, false, NULL); /* a tag of a later version */
    model_free(&m), model_file_free(&f);
    m = load(with_section("empty.bin", "TOKN", deep, 0), &f, false, NULL);
    assert_true(f.tokenizer && f.tokenizer_bytes == 0);
    model_free(&m), model_file_free(&f);
}

static void test_unwritable(void **state) {
    (void)state;
    ModelFile f;
    Error e = {""};
    Model m = sample_model(config(4, 1), &f, 11);
    const char *path = files_path("kept.bin");
    files_put(path, "earlier", 7);
    const int before = files_count();
    assert_false(model_save(&m, &f, files_path("no/such/directory.bin"), MODEL_FLOAT32, NULL, NULL, &e));
    files_assert_error(&e, "no/such/directory.bin");
    assert_false(model_save(&m, &f, "/dev/full", MODEL_FLOAT32, NULL, NULL, &e));
    files_assert_error(&e, "/dev/full");
    signal(SIGXFSZ, SIG_IGN); /* the disk becomes full half-way */
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 20000;
    setrlimit(RLIMIT_FSIZE, &small);
    const bool saved = model_save(&m, &f, path, MODEL_FLOAT32, NULL, NULL, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_false(saved);
    files_assert_error(&e, "kept.bin");
    files_assert_content(path, "earlier", 7);
    assert_int_equal(files_count(), before); /* no partial file remains */
    model_free(&m), model_file_free(&f);
}

static int open_all(void **state) { return open_device_one_thread(state) || files_setup(state); }

static int close_all(void **state) {
    const int failed = close_device(state);
    return files_teardown(state) || failed;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_special_numbers),
        cmocka_unit_test(test_weights_that_are_not_finite),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_bare),
        cmocka_unit_test(test_without_trailer),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_value_head),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_new_models),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped),
        cmocka_unit_test(test_bad_sections),
        cmocka_unit_test(test_unwritable),
    };
    return cmocka_run_group_tests_name("model_file", tests, open_all, close_all);
}
