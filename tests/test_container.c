/* test_container.c - the single file of models and training states, and GGUF as an input and output of every family: tiny
 * models of transformers (tests/golden/families) through every format and back, byte for byte if the format allows it;
 * files that are damaged anywhere; texts of the metadata that no program writes. */
#include "../llmc/base/error.h"           /* Error, xmalloc, xstrdup, xcalloc, ... */
#include "../llmc/base/io.h"              /* XXH3_64bits, writer_hash */
#include "../llmc/base/random.h"          /* Random, random_below, random_start, random_normal */
#include "../llmc/base/text.h"            /* token_list_free, TokenList */
#include "../llmc/model/backend.h"        /* Floats */
#include "../llmc/model/config.h"         /* LoraConfig, LORA_ALL, LORA_DOWN, LORA_OF_QKV, ... */
#include "../llmc/model/gguf.h"           /* GgufEntry, gguf_close, gguf_open, Gguf, ... */
#include "../llmc/model/gguf_save.h"      /* gguf_check_config */
#include "../llmc/model/lora.h"           /* model_trained_first */
#include "../llmc/model/model.h"          /* Model, model_free, model_download, model_init, ... */
#include "../llmc/model/model_file.h"     /* MODEL_FLOAT32, MODEL_F16, MODEL_Q8_0, model_save, ... */
#include "../llmc/model/model_load.h"     /* ModelFile, model_weights_hash, ModelLoad, model_file_free */
#include "../llmc/model/optimizer.h"      /* Optimizer, optimizer_free */
#include "../llmc/model/safetensors.h"    /* safetensors_close, Safetensors, safetensors_open, SafeTensor, ... */
#include "../llmc/model/tensors.h"        /* TENSOR_valueb */
#include "../llmc/text/tokenizer.h"       /* tokenizer_free, tokenizer_encode, tokenizer_store, Tokenizer, ... */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open */
#include "cpu_device.h"                   /* B, D, close_device, open_device_one_thread */
#include "files.h"                        /* files_path, files_assert_error, files_put, files_get, ... */

#define FAMILIES "tests/golden/families/"

static const char *const families[] = {"gemma2",     "gemma3", "gpt2",      "llama-a",       "llama-b",
                                       "mistral",    "olmo2",  "phi3",      "phi3-longrope", "qwen2",
                                       "qwen2-yarn", "qwen3",  "qwen3-odd", "smollm3"};
enum { COUNT = sizeof families / sizeof *families };

static const char *family(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, FAMILIES "%s", name);
    return path;
}

static Model load(const char *path, ModelFile *f, bool value_head, Optimizer *o) {
    Error e;
    Model m;
    if (!model_load(&m, f, path, NULL, value_head, B, D, o != NULL, 5, o, &e)) fail_msg("%s", e.text);
    return m;
}

static void save(const Model *m, const ModelFile *f, const char *path, ModelDtype type) {
    Error e;
    if (!model_save(m, f, path, type, NULL, NULL, &e)) fail_msg("%s", e.text);
}

static void unload(Model *m, ModelFile *f) { model_free(m), model_file_free(f); }

static float *weights_of(const Model *m) {
    float *x = xmalloc(m->parameters * sizeof *x);
    model_download(m, 0, x, m->parameters);
    return x;
}

static void assert_same_model(const Model *a, const Model *b) {
    float *x = weights_of(a), *y = weights_of(b);
    assert_memory_equal(&a->config, &b->config, sizeof a->config);
    assert_memory_equal(x, y, a->parameters * sizeof *x);
    assert_true(model_weights_hash(a) == model_weights_hash(b));
    free(x), free(y);
}

static void assert_same_file(const char *a, const char *b) {
    size_t n;
    uint8_t *bytes = files_get(a, &n);
    files_assert_content(b, bytes, n);
    free(bytes);
}

static void assert_same_in_folders(const char *a, const char *b, const char *name) {
    char x[300], y[300];
    snprintf(x, sizeof x, "%s/%s", a, name), snprintf(y, sizeof y, "%s/%s", b, name);
    if (access(x, F_OK)) assert_int_equal(access(y, F_OK), -1);
    else assert_same_file(x, y);
}

/* The file must not load: one line names it and contains `part`. */
static void refused(const char *path, bool training, const char *part) {
    Error e = {""};
    Model m;
    ModelFile f;
    Optimizer o;
    assert_false(model_load(&m, &f, path, NULL, false, B, D, training, 5, training ? &o : NULL, &e));
    files_assert_error(&e, part);
    files_assert_error(&e, path);
    assert_true(m.weights == NULL && f.lineage == NULL && f.source == NULL);
}

/* ==== Round trips ==== */

/* A folder, a single file, and the folder again: the same bytes, also of the second single file. */
static void test_folders(void **state) {
    (void)state;
    static const char *const kept[] = {"config.json", "generation_config.json", "model.safetensors"};
    for (int i = 0; i < COUNT; i++) {
        ModelFile f, g, h;
        Model m = load(family(families[i]), &f, false, NULL);
        const char *one = i % 2 ? files_path("one.safetensors.zst") : files_path("one.safetensors");
        save(&m, &f, one, MODEL_FLOAT32);
        Model n = load(one, &g, false, NULL);
        assert_same_model(&m, &n);
        assert_true(f.stops.count == g.stops.count && g.source && g.hash);
        save(&n, &g, files_path("again/"), MODEL_FLOAT32);
        for (int k = 0; k < 3; k++) assert_same_in_folders(family(families[i]), files_path("again"), kept[k]);
        save(&n, &g, files_path("two.safetensors"), MODEL_FLOAT32);
        Model p = load(files_path("two.safetensors"), &h, false, NULL);
        assert_same_model(&m, &p);
        assert_true(g.hash == h.hash);
        unload(&m, &f), unload(&n, &g), unload(&p, &h);
    }
}

/* A file that any reader of safetensors opens: tensors with the names and shapes of the folder's. */
static void test_names(void **state) {
    (void)state;
    for (int i = 0; i < COUNT; i++) {
        Error e;
        ModelFile f;
        Safetensors a, b;
        char path[300];
        Model m = load(family(families[i]), &f, false, NULL);
        save(&m, &f, files_path("bf16.safetensors"), MODEL_BF16);
        snprintf(path, sizeof path, "%s/model.safetensors", family(families[i]));
        assert_true(safetensors_open(&a, path, &e) && safetensors_open(&b, files_path("bf16.safetensors"), &e));
        assert_true(b.count == a.count + 1 && !strcmp(b.tensor[a.count].name, "llmc.checksum"));
        for (size_t k = 0; k < a.count; k++) {
            const SafeTensor *t = safetensors_find(&b, a.tensor[k].name);
            assert_true(t && t->type == SAFETENSORS_BF16 && t->elements == a.tensor[k].elements);
            assert_memory_equal(t->shape, a.tensor[k].shape, sizeof t->shape);
        }
        /* the checksum is that of all bytes before it */
        assert_true(XXH3_64bits(b.file, b.file_bytes - 8) ==
                    *(const uint64_t *)memcpy(&(uint64_t){0}, b.file + b.file_bytes - 8, 8));
        safetensors_close(&a), safetensors_close(&b), unload(&m, &f);
    }
}

static void test_value_head(void **state) {
    (void)state;
    for (int i = 0; i < COUNT; i++) {
        ModelFile f, g, h;
        Model m = load(family(families[i]), &f, true, NULL);
        float bias = 0.37f;
        model_upload(&m, m.tensor[TENSOR_valueb].offset, &bias, 1);
        f.reward = xstrdup("{\"mean\":0.25}");
        save(&m, &f, files_path("rm.safetensors"), MODEL_FLOAT32);
        Model n = load(files_path("rm.safetensors"), &g, true, NULL);
        assert_same_model(&m, &n);
        assert_true(g.head);
        assert_string_equal(g.reward, f.reward);
        Model p = load(files_path("rm.safetensors"), &h, false, NULL); /* not asked for */
        assert_int_equal(p.parameters, m.parameters - (size_t)m.config.width - 1);
        unload(&m, &f), unload(&n, &g), unload(&p, &h);
    }
}

/* Through a pipe, as it is and compressed. */
static void test_streams(void **state) {
    (void)state;
    ModelFile f, g;
    size_t size;
    Error e;
    Model m = load(family("qwen3"), &f, false, NULL);
    files_catch_stdout(files_path("out"));
    const bool ok = model_save(&m, &f, "-", MODEL_FLOAT32, NULL, NULL, &e);
    files_restore(1);
    assert_true(ok);
    save(&m, &f, files_path("out.zst"), MODEL_FLOAT32);
    const char *const names[] = {"out", "out.zst"};
    for (int k = 0; k < 2; k++) {
        uint8_t *bytes = files_get(files_path(names[k]), &size);
        files_feed_stdin(bytes, size, 999);
        Model n = load("-", &g, false, NULL);
        files_restore(0);
        assert_same_model(&m, &n);
        free(bytes), unload(&n, &g);
    }
    unload(&m, &f);
}

/* A model.safetensors next to a config.json is its folder; another file without our metadata is refused. */
static void test_plain_file(void **state) {
    (void)state;
    ModelFile f, g;
    Model m = load(family("llama-a"), &f, false, NULL), n = load(FAMILIES "llama-a/model.safetensors", &g, false, NULL);
    assert_same_model(&m, &n);
    assert_true(f.hash == g.hash);
    unload(&m, &f), unload(&n, &g);
    refused(FAMILIES "llama-a/expected.safetensors", false, "has no configuration in its __metadata__");
}

/* ==== GGUF ==== */

/* A folder, GGUF, a folder and GGUF again: equal configurations and weights, and the same bytes of the second file. The
 * window of Mistral and of Qwen is in no GGUF file. */
static void test_gguf(void **state) {
    (void)state;
    int written = 0;
    for (int i = 0; i < COUNT; i++) {
        Error e = {""};
        ModelFile f, g, h;
        Model m = load(family(families[i]), &f, false, NULL);
        const char *first = files_path("first.gguf"), *second = files_path("second.gguf");
        if (!gguf_check_config(&m.config, first, &e)) {
            assert_false(model_save(&m, &f, first, MODEL_FLOAT32, NULL, NULL, &e));
            files_assert_error(&e, "a GGUF file of architecture");
            unload(&m, &f);
            continue;
        }
        written++;
        save(&m, &f, first, MODEL_FLOAT32);
        Model n = load(first, &g, false, NULL);
        float *x = weights_of(&m), *y = weights_of(&n);
        assert_int_equal(m.parameters, n.parameters);
        for (size_t k = 0; k < m.parameters; k++) /* norms of Gemma are stored with 1 added */
            assert_true(m.config.norm_plus_one ? fabsf(x[k] - y[k]) <= 1.2e-7f : x[k] == y[k]);
        free(x), free(y);
        assert_true(g.gguf && !g.source && g.hash);
        save(&n, &g, files_path("folder/"), MODEL_FLOAT32);
        Model p = load(files_path("folder"), &h, false, NULL);
        assert_same_model(&n, &p);
        model_file_free(&h);
        save(&n, &g, files_path("one"), MODEL_FLOAT32); /* and by way of a single file, which keeps the entries */
        model_free(&p);
        p = load(files_path("one"), &h, false, NULL);
        assert_same_model(&n, &p);
        save(&p, &h, second, MODEL_FLOAT32);
        if (!m.config.norm_plus_one) assert_same_file(first, second);
        unload(&m, &f), unload(&n, &g), unload(&p, &h);
    }
    if (written < 10) fail_msg("%d families were written", written);
}

/* Files of llama.cpp's converter: the entries of the tokenizer are passed on. */
static void test_gguf_tokenizer(void **state) {
    (void)state;
    static const char *const names[] = {"gpt2", "llama", "qwen2", "gemma3", "phi3"};
    for (int i = 0; i < 5; i++) {
        Error e;
        char path[100];
        ModelFile f;
        Gguf a, b;
        size_t carried = 0;
        snprintf(path, sizeof path, "tests/golden/gguf/%s.gguf.zst", names[i]);
        Model m = load(path, &f, false, NULL);
        save(&m, &f, files_path("out.gguf"), MODEL_F16);
        assert_true(gguf_open(&a, path, &e) && gguf_open(&b, files_path("out.gguf"), &e));
        for (size_t k = 0; k < a.entry_count; k++) {
            const GgufEntry *entry = &a.entries[k];
            if (!gguf_begins(entry->key, "tokenizer.") && !gguf_is(entry->key, "general.name")) continue;
            char *key = xstrndup(entry->key.text, entry->key.length);
            const GgufEntry *same = gguf_find(&b, key);
            assert_true(same && same->value_bytes == entry->value_bytes);
            assert_memory_equal(same->value, entry->value, entry->value_bytes);
            free(key);
            carried++;
        }
        assert_true(carried > 0);
        gguf_close(&a), gguf_close(&b), unload(&m, &f);
    }
}

/* A tokenizer that came from no GGUF file: the file that is written has one that encodes the same. The byte tokenizer has
 * no pattern, for which llama.cpp has no name. */
static void test_gguf_new_tokenizer(void **state) {
    (void)state;
    Error e;
    Tokenizer t, u;
    Model m, n;
    ModelFile f = {.lineage = json_array()}, g;
    assert_true(tokenizer_open(&t, "tests/golden/tokenizer_small.json", &e));
    const ModelConfig c = gpt2_config(1, 2, 16, t.vocab, 32);
    assert_true(model_new(&m, &c, B, D, false, &e));
    model_init(&m, 3);
    assert_true(tokenizer_store(&t, &f.tokenizer, &f.tokenizer_bytes, &e));
    f.chat_template = xstrdup("{#llmc {\"date\":\"2024-07-26\",\"variables\":{}}#}\n{{ messages[0].content }}");
    assert_true(model_check_output(&c, &f, "out.gguf", MODEL_F16, &e));
    save(&m, &f, files_path("new.gguf"), MODEL_F16);
    n = load(files_path("new.gguf"), &g, false, NULL);
    assert_non_null(g.tokenizer);
    assert_non_null(strstr(g.chat_template, "}#}\n{{ messages[0].content }}"));
    assert_true(tokenizer_load(&u, g.tokenizer, g.tokenizer_bytes, &e));
    static const char text[] = "The quick brown fox,  12 jumps\n\nover \xc3\xa9t\xc3\xa9!";
    TokenList a = {0}, b = {0};
    assert_true(tokenizer_encode(&t, text, strlen(text), 0, &a, &e) &&
                tokenizer_encode(&u, text, strlen(text), 0, &b, &e));
    assert_true(a.count > 5 && a.count == b.count);
    assert_memory_equal(a.ids, b.ids, (size_t)a.count * sizeof *a.ids);
    token_list_free(&a), token_list_free(&b), tokenizer_free(&t), tokenizer_free(&u);
    unload(&n, &g);
    assert_true(tokenizer_bytes(&t, &e));
    free(f.tokenizer);
    assert_true(tokenizer_store(&t, &f.tokenizer, &f.tokenizer_bytes, &e));
    assert_false(model_check_output(&c, &f, "out.gguf", MODEL_F16, &e));
    files_assert_error(&e, "out.gguf: tokenizer: llama.cpp has no name for its pattern");
    assert_true(model_check_output(&c, &f, "out.safetensors", MODEL_F16, &e));
    tokenizer_free(&t), unload(&m, &f);
}

static void test_output_types(void **state) {
    (void)state;
    Error e;
    ModelFile f, g;
    Model m = load(family("llama-a"), &f, false, NULL);
    static const struct {
        const char *name;
        ModelDtype type;
        const char *part; /* of the message; NULL: it is written */
    } all[] = {{"a.bin", MODEL_FLOAT32, "a.bin: the format .bin holds GPT-2 only"},
               {"a.bin", MODEL_F16, "this format cannot hold f16, expected float32 or bf16"},
               {"a.safetensors", MODEL_Q8_0, "this format cannot hold q8_0, expected float32, bf16 or f16"},
               {"a/", MODEL_Q8_0, "this format cannot hold q8_0"},
               {"a/", MODEL_F16, NULL},
               {"a.safetensors", MODEL_F16, NULL},
               {"a.gguf", MODEL_BF16, NULL},
               {"a.gguf", MODEL_F16, NULL},
               {"a.gguf.zst", MODEL_Q8_0, NULL}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const char *path = files_path(all[i].name);
        assert_true(model_check_output(&m.config, &f, path, all[i].type, &e) == !all[i].part);
        const bool ok = model_save(&m, &f, path, all[i].type, NULL, NULL, &e);
        assert_true(ok == !all[i].part);
        if (!ok) files_assert_error(&e, all[i].part);
        if (!ok) continue;
        Model n = load(path, &g, false, NULL);
        float *x = weights_of(&m), *y = weights_of(&n);
        double sum = 0, largest = 0; /* 8 bits of bf16, 11 of f16 from 2^-14 on, 8 of a block's largest of q8_0 */
        for (size_t k = 0; k < m.parameters; k++) {
            const double gap = fabs((double)x[k] - y[k]);
            if (all[i].type != MODEL_Q8_0) assert_true(gap <= fabs((double)x[k]) * 0x1p-8 + 0x1p-25);
            sum += gap;
            largest = fmax(largest, fabs((double)x[k]));
        }
        assert_true(all[i].type != MODEL_Q8_0 || (sum > 0 && sum / (double)m.parameters < largest / 100));
        free(x), free(y), unload(&n, &g);
    }
    unload(&m, &f);
}

/* ==== Training states ==== */

/* A model of a family with random moments, and its optimizer. */
static Model trained(const char *name, ModelFile *f, Optimizer *o, bool value_head, LoraConfig lora) {
    Error e;
    Model m;
    const ModelLoad how = {.gradients = true, .value_head = value_head, .lora = lora, .seed = 3};
    if (!model_load_as(&m, f, family(name), &how, B, D, o, &e)) fail_msg("%s", e.text);
    float *x = xmalloc(o->count * sizeof *x);
    Random r = random_start(9, 0);
    Floats *const array[] = {o->m, o->v};
    for (int k = 0; k < 2; k++) {
        for (size_t i = 0; i < o->count; i++) x[i] = (float)random_normal(&r);
        B->upload(D, array[k], x, o->count * sizeof *x);
    }
    free(x);
    return m;
}

static void assert_same_moments(const Optimizer *a, const Optimizer *b) {
    assert_int_equal(a->count, b->count);
    const Floats *const x[] = {a->m, a->v}, *const y[] = {b->m, b->v};
    float *host[2] = {xmalloc(a->count * sizeof(float)), xmalloc(a->count * sizeof(float))};
    for (int k = 0; k < 2; k++) {
        B->download(D, host[0], x[k], a->count * sizeof(float));
        B->download(D, host[1], y[k], a->count * sizeof(float));
        assert_memory_equal(host[0], host[1], a->count * sizeof(float));
    }
    free(host[0]), free(host[1]);
}

static void save_state(const Model *m, const ModelFile *f, const Optimizer *o, const char *path) {
    Error e;
    if (!model_save(m, f, path, MODEL_FLOAT32, o, "{\"step\":3}", &e)) fail_msg("%s", e.text);
}

static void test_states(void **state) {
    (void)state;
    for (int i = 0; i < COUNT; i++) {
        ModelFile f, g, h;
        Optimizer o, p;
        Model m = trained(families[i], &f, &o, i % 2, (LoraConfig){0});
        save_state(&m, &f, &o, files_path("full.state"));
        Model n = load(files_path("full.state"), &g, i % 2, &p);
        assert_same_model(&m, &n);
        assert_same_moments(&o, &p);
        assert_string_equal(g.trainer, "{\"step\":3}");
        Model q = load(files_path("full.state"), &h, false, NULL); /* a state is a model */
        assert_true(model_weights_hash(&m) == model_weights_hash(&q));
        optimizer_free(&o, &m), optimizer_free(&p, &n), unload(&m, &f), unload(&n, &g), unload(&q, &h);
    }
}

/* A state of adapters is small, and belongs to its base. */
static void test_states_of_adapters(void **state) {
    (void)state;
    for (int i = 0; i < COUNT; i++) {
        Error e;
        Model n;
        ModelFile f, g;
        Optimizer o, p;
        Safetensors s;
        /* GPT-2 and Phi-3 have one adapter for queries, keys and values together */
        const bool fused = !strncmp(families[i], "gpt2", 4) || !strncmp(families[i], "phi3", 4);
        const int some = (fused ? LORA_OF_QKV : LORA_Q) | LORA_DOWN;
        const LoraConfig lora = {.rank = 2, .targets = i % 2 ? LORA_ALL : some, .scale = 0.3f};
        Model m = trained(families[i], &f, &o, i % 3 == 0, lora);
        save_state(&m, &f, &o, files_path("lora.state"));
        assert_true(safetensors_open(&s, files_path("lora.state"), &e));
        uint64_t elements = 0;
        for (size_t k = 0; k < s.count; k++) elements += s.tensor[k].elements;
        assert_int_equal(elements,
                         3 * (m.parameters - model_trained_first(&m)) + 8); /* values, two moments, and the checksum */
        safetensors_close(&s);
        const ModelLoad how = {
            .gradients = true, .value_head = i % 3 == 0, .lora = lora, .resume = files_path("lora.state"), .seed = 3};
        if (!model_load_as(&n, &g, family(families[i]), &how, B, D, &p, &e)) fail_msg("%s", e.text);
        assert_same_model(&m, &n);
        assert_same_moments(&o, &p);
        assert_true(g.source != NULL); /* of the base's folder */
        optimizer_free(&p, &n), unload(&n, &g);
        refused(files_path("lora.state"), false, "holds the adapters of a training state and no model");
        const char *other = !strcmp(families[i], "llama-a") ? "llama-b" : "llama-a";
        assert_false(model_load_as(&n, &g, family(other), &how, B, D, &p, &e));
        assert_true(strchr(e.text, '\n') == NULL && strstr(e.text, "lora.state: "));
        optimizer_free(&o, &m), unload(&m, &f);
    }
}

/* ==== Damage ==== */

/* Two files with every kind of tensor and text: a state with a value head, and a state of adapters. */
static uint8_t *sample(int k, size_t *size) {
    ModelFile f;
    Optimizer o;
    const LoraConfig lora = {.rank = k, .targets = k ? LORA_ALL : 0, .scale = 0.5f};
    Model m = trained("qwen2", &f, &o, true, lora);
    f.tokenizer = xcalloc(1, 40);
    f.tokenizer_bytes = 40;
    f.chat_template = xstrdup("{{ messages }}");
    f.reward = xstrdup("{\"mean\":0.25}");
    save_state(&m, &f, &o, files_path("sample.state"));
    optimizer_free(&o, &m), unload(&m, &f);
    return files_get(files_path("sample.state"), size);
}

static bool loads(const char *path, bool adapters, Error *e) {
    Model m;
    ModelFile f;
    Optimizer o;
    ModelLoad how = {.gradients = true, .value_head = true, .resume = path};
    if (adapters) how.lora = (LoraConfig){.rank = 1, .targets = LORA_ALL, .scale = 0.5f};
    *e = (Error){""};
    if (!model_load_as(&m, &f, family("qwen2"), &how, B, D, &o, e)) return false;
    optimizer_free(&o, &m), unload(&m, &f);
    return true;
}

static void assert_damaged(const char *path, bool adapters) {
    Error e;
    if (loads(path, adapters, &e)) fail_msg("%s: a damaged file is read", path);
    files_assert_error(&e, "");
    files_assert_error(&e, path);
}

static void test_truncated(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        Error e;
        size_t size;
        Safetensors s;
        uint8_t *bytes = sample(k, &size);
        const char *path = files_path("short.state");
        assert_true(safetensors_memory(&s, "s", bytes, size, &e));
        const size_t data = size - s.data_bytes;
        files_put(path, bytes, size);
        if (!loads(path, k, &e)) fail_msg("%s", e.text);
        for (size_t i = 0; i < s.count; i++) { /* at both ends of every tensor, and within it */
            const size_t at[] = {data + s.tensor[i].begin, data + (s.tensor[i].begin + s.tensor[i].end) / 2,
                                 data + s.tensor[i].end - 1};
            for (int j = 0; j < 3; j++) files_put(path, bytes, at[j]), assert_damaged(path, k);
        }
        for (size_t n = 0; n < data; n += n < 40 ? 1 : 97) files_put(path, bytes, n), assert_damaged(path, k);
        safetensors_close(&s), free(bytes);
    }
}

static void test_flipped(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        Error e;
        size_t size;
        uint8_t *bytes = sample(k, &size);
        const char *path = files_path("flipped.state");
        Random r = random_start(1, 2);
        for (int i = 0; i < 500; i++) {
            const size_t at = i < 64    ? (size_t)i / 4
                              : i < 128 ? size - 1 - (size_t)(i - 64) / 4
                                        : (size_t)random_below(&r, size);
            const uint8_t bit = (uint8_t)(1 << random_below(&r, 8));
            bytes[at] ^= bit;
            files_put(path, bytes, size);
            assert_damaged(path, k);
            bytes[at] ^= bit;
        }
        files_put(path, bytes, size);
        if (!loads(path, k, &e)) fail_msg("%s", e.text);
        free(bytes);
    }
}

/* The file with one key of the metadata replaced (NULL: removed), and a right checksum. */
static const char *with_key(const uint8_t *bytes, size_t size, const char *key, const char *value) {
    Error e;
    Safetensors s;
    SafetensorsWriter w = {0};
    const char *path = files_path("changed.state");
    assert_true(safetensors_memory(&s, "s", bytes, size, &e));
    json_t *metadata = json_deep_copy(s.metadata);
    if (value) json_object_set_new(metadata, key, json_string(value));
    else json_object_del(metadata, key);
    for (size_t i = 0; i < s.count; i++)
        safetensors_add(&w, s.tensor[i].name, s.tensor[i].type, s.tensor[i].dims, s.tensor[i].shape);
    assert_true(safetensors_begin(&w, path, metadata, &e));
    for (size_t i = 0; i < w.count; i++) {
        const SafeTensor *t = safetensors_find(&s, w.tensor[i].name);
        const uint64_t hash = writer_hash(&w.out);
        const void *data = i + 1 < w.count ? (const void *)t->data : &hash;
        assert_true(safetensors_put(&w, data, (size_t)(t->end - t->begin), &e));
    }
    assert_true(safetensors_commit(&w, &e));
    json_decref(metadata), safetensors_close(&s);
    return path;
}

static void test_metadata(void **state) {
    (void)state;
    static const struct {
        const char *key, *value, *part;
        bool adapters;
    } bad[] = {
        {"llmc", "2", "is of version 2, expected 1", false},
        {"llmc", "", "is of version", false},
        {"llmc", "1.5", "is of version 1.5, expected 1", false},
        {"llmc", NULL, "has no configuration", false},
        {"config.json", NULL, "has no config.json", false},
        {"config.json", "{", "config.json", false},
        {"config.json", "{}", "model_type", false},
        {"llm.c", "[1]", "llm.c is not a list of 17 numbers", false},
        {"llm.c", "{}", "llm.c is not a JSON array", false},
        {"llm.c", "[0,3,8,9,1,1,4,4194304,0,0,0,0,0,0,0,0,0]", "padded vocabulary", false},
        {"lineage", "{}", "lineage is not a JSON array", false},
        {"stops", "[-1]", "outside the vocabulary", false},
        {"stops", "[1000000]", "outside the vocabulary", false},
        {"stops", "3", "stops is not a JSON array", false},
        {"base64:tokenizer", "AAA", "tokenizer is not base64", false},
        {"tokenizer", "x", "tokenizer is there twice", false},
        {"future", "x", "key \"future\" is not known", false},
        {"file:../../evil", "x", "is not a file of a model's folder", false},
        {"file:LICENSE/../../evil", "x", "is not a file of a model's folder", false},
        {"file:config.json", "x", "is not a file of a model's folder", false},
        {"file:additional_chat_templates/../x.jinja", "x", "is not a file of a model's folder", false},
        {"file:additional_chat_templates/.x.jinja", "x", "is not a file of a model's folder", false},
        {"file:additional_chat_templates/x/y.jinja", "x", "is not a file of a model's folder", false},
        {"file:templates/x.jinja", "x", "is not a file of a model's folder", false},
        {"file:.x.tiktoken", "x", "is not a file of a model's folder", false},
        {"source", "[]", "source is not a JSON object", false},
        {"source", "{}", "source is not valid", false},
        {"source", "{\"types\":{\"x\":\"I32\"},\"metadata\":{}}", "has no type of numbers", false},
        {"source", "{\"types\":{},\"metadata\":{\"a\":1}}", "source: a is not valid", false},
        {"source", "{\"types\":{},\"metadata\":{},\"shards\":{\"a\":\"../x.safetensors\"},\"index\":\"\"}",
         "source: a is not valid", false},
        {"adapter", "{}", "adapter is not valid", false},
        {"adapter", "{\"rank\":1000000,\"targets\":1,\"scale\":1,\"base\":\"0\"}", "adapter is not valid", true},
        {"adapter", "{\"rank\":1,\"targets\":127,\"scale\":0.5,\"dora\":\"yes\",\"base\":\"0\"}",
         "adapter is not valid", true},
        {"adapter", "{\"rank\":1,\"targets\":127,\"scale\":0.5,\"base\":\"0\"}", "were trained on another model", true},
        {"adapter", NULL, "is not known", true}};
    size_t size[2];
    uint8_t *bytes[2] = {sample(0, &size[0]), sample(1, &size[1])};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Error e;
        const int k = bad[i].adapters;
        const char *path = with_key(bytes[k], size[k], bad[i].key, bad[i].value);
        if (loads(path, k, &e)) fail_msg("%s: %s is read", bad[i].key, bad[i].value);
        files_assert_error(&e, bad[i].part);
        files_assert_error(&e, "changed.state: ");
    }
    Error e; /* a change that is allowed */
    assert_true(loads(with_key(bytes[0], size[0], "chat_template", "other"), false, &e));
    assert_true(loads(with_key(bytes[0], size[0], "file:LICENSE", "text"), false, &e));
    assert_true(loads(with_key(bytes[0], size[0], "file:additional_chat_templates/X.JINJA", "text"), false, &e));
    free(bytes[0]), free(bytes[1]);
}

static int open_all(void **state) { return open_device_one_thread(state) || files_setup(state); }

static int close_all(void **state) {
    const int failed = close_device(state);
    return files_teardown(state) || failed;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_folders),
                                       cmocka_unit_test(test_names),
                                       cmocka_unit_test(test_value_head),
                                       cmocka_unit_test(test_streams),
                                       cmocka_unit_test(test_plain_file),
                                       cmocka_unit_test(test_gguf),
                                       cmocka_unit_test(test_gguf_tokenizer),
                                       cmocka_unit_test(test_gguf_new_tokenizer),
                                       cmocka_unit_test(test_output_types),
                                       cmocka_unit_test(test_states),
                                       cmocka_unit_test(test_states_of_adapters),
                                       cmocka_unit_test(test_truncated),
                                       cmocka_unit_test(test_flipped),
                                       cmocka_unit_test(test_metadata)};
    return cmocka_run_group_tests_name("container", tests, open_all, close_all);
}
