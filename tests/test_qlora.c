/* test_qlora.c - models with quantised matrices equal models that hold the values of their blocks in float32. */
#include "../llmc/base/error.h"        /* Error, xmalloc */
#include "../llmc/base/random.h"       /* Random, random_below, random_start, random_normals */
#include "../llmc/model/backend.h"     /* QUANT_Q8_0, QuantType, QuantMatrix, QUANT_F32, ... */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/config.h"      /* ModelConfig, LORA_ALL, LoraConfig, FAMILY_LLAMA, ... */
#include "../llmc/model/model.h"       /* Model, model_free, model_download, model_blocks_of, ... */
#include "../llmc/model/model_file.h"  /* model_save, MODEL_FLOAT32, model_load_as, MODEL_BF16, ... */
#include "../llmc/model/model_load.h"  /* model_file_free, ModelLoad, ModelFile, QUANTIZE_KEEP, ... */
#include "../llmc/model/optimizer.h"   /* Optimizer, optimizer_free, optimizer_step */
#include "../llmc/model/pack.h"        /* batch_free */
#include "../llmc/model/peft.h"        /* peft_write */
#include "../llmc/model/quantized.h"   /* quant_bytes, quant_decode, quant_encode */
#include "../llmc/model/safetensors.h" /* SafeTensor, Safetensors, safetensors_close, safetensors_find, ... */
#include "../llmc/model/tensors.h"     /* matrix_tensor, FIRST_LORA_TENSOR, MATRIX_COUNT, TENSOR_wte, ... */
#include "../llmc/model/transformer.h" /* ModelOutput, model_forward */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "adapted.h"                   /* adapted_pass, ROWS, adapted_batch, adapted_randomize, ... */
#include "cpu_device.h"                /* B, D, close_device, open_device_one_thread */
#include "files.h"                     /* files_path, files_assert_error, files_get, files_put, ... */
#include "variants.h"                  /* VARIANTS, variant_of */

/* GPT-2 (-1) or a variant, with rows of 64, 32 and 256 elements. */
static ModelConfig config_of(int variant) {
    ModelConfig c = gpt2_config(2, 4, 64, VOCAB, CONTEXT);
    if (variant >= 0) {
        variant_of(&c, variant);
        c.family = FAMILY_LLAMA;
        c.head_size = 16;
        if (c.rotary > 16) c.rotary = 16;
    }
    c.lora = (LoraConfig){.rank = 3, .targets = LORA_ALL, .scale = 0.7f};
    return c;
}

/* A model with random weights and matrices of this type. */
static Model quantized_model(const ModelConfig *c, QuantType type) {
    Error e;
    Model m = {0};
    QuantMatrix *plan = quant_plan(c, type, &e);
    if (!plan || !model_new_quantized(&m, c, plan, NULL, B, D, &e) || !model_new_grads(&m, &e)) fail_msg("%s", e.text);
    adapted_randomize(&m, 3);
    assert_true(model_check_matrices(&m, "a model", &e));
    return m;
}

/* The float32 model that holds its values. */
static Model plain_model(const Model *from) {
    Error e;
    Model m;
    if (!model_new(&m, &from->config, B, D, true, &e)) fail_msg("%s", e.text);
    for (ModelChunk c = {0}; model_each_chunk(&c, m.parameters);) {
        model_download(from, c.at, c.host, c.n);
        model_upload(&m, c.at, c.host, c.n);
    }
    return m;
}

/* The same products of the same values in another order of sums. Either float32 pass is within 1e-5 of the exact
 * log-probabilities (test_families.c), so they are within 2e-5 of each other; gradients within 1e-4 of the largest of a
 * tensor, as in test_lora.c. Each level of recomputation gives the same bits. */
static void test_equals_values(void **state) {
    (void)state;
    static const QuantType types[] = {QUANT_Q8_0, QUANT_Q4_0};
    for (int variant = -1; variant < VARIANTS; variant++) {
        const ModelConfig c = config_of(variant);
        Model m = quantized_model(&c, types[(variant + 1) % 2]), plain = plain_model(&m);
        Batch b = adapted_batch(5);
        float logp[2][ROWS], *grads[2];
        for (int i = 0; i < 2; i++) grads[i] = xmalloc(m.grads_count * sizeof **grads);
        assert_int_equal(m.grads_count, plain.grads_count);
        adapted_pass(&m, &b, 0, logp[0], grads[0]);
        adapted_pass(&plain, &b, 0, logp[1], grads[1]);
        for (int i = 0; i < b.targets; i++)
            if (!(fabs(logp[0][i] - logp[1][i]) < 2e-5)) fail_msg("target %d: %.9g, %.9g", i, logp[0][i], logp[1][i]);
        for (int i = FIRST_LORA_TENSOR; i < TENSOR_COUNT; i++) {
            double most = 0, worst = 0;
            for (size_t k = m.grads_offset[i]; k < m.grads_offset[i] + m.tensor[i].size; k++) {
                most = fmax(most, fabs(grads[1][k]));
                worst = fmax(worst, fabs((double)grads[0][k] - grads[1][k]));
            }
            if (!(worst <= 1e-4 * most) || (m.tensor[i].size && most == 0))
                fail_msg("variant %d, %s: %g of %g", variant, m.tensor[i].name, worst, most);
        }
        adapted_check_recompute(&m, &b, logp[0], grads[0]);
        free(grads[0]), free(grads[1]), batch_free(&b), model_free(&m), model_free(&plain);
    }
}

static void test_rollout_logp(void **state) {
    (void)state;
    const ModelConfig c = config_of(1);
    Model m = quantized_model(&c, QUANT_Q4_0);
    adapted_check_rollout(&m);
    model_free(&m);
}

/* Parts of matrices, across the ends of tensors and from the middle of blocks, have the values of the whole. The memory is
 * that of the blocks: 34 bytes for 32 elements. */
static void test_elements(void **state) {
    (void)state;
    Error e;
    ModelConfig c = config_of(1);
    Model m = quantized_model(&c, QUANT_Q8_0), copy;
    float *all = xmalloc(m.parameters * sizeof *all), *some = xmalloc(m.parameters * sizeof *some);
    size_t elements = 0;
    model_download(&m, 0, all, m.parameters);
    Random r = random_start(8, 0);
    for (int i = 0; i < 300; i++) {
        const size_t at = (size_t)random_below(&r, (uint32_t)m.parameters);
        const size_t n = (size_t)random_below(&r, (uint32_t)(m.parameters - at)) % (i % 2 ? 50 : 100000) + 1;
        model_download(&m, at, some, n);
        assert_memory_equal(some, all + at, n * sizeof *all);
    }
    for (int i = 0; i < MATRIX_COUNT; i++) elements += m.tensor[matrix_tensor[i]].size;
    assert_int_equal(m.stored, m.parameters - elements);
    assert_int_equal(m.block_bytes, elements / 32 * 34);
    assert_true(model_copy(&copy, &m, &e));
    assert_ptr_equal(copy.blocks, m.blocks);
    model_download(&copy, 0, some, m.parameters);
    assert_memory_equal(some, all, m.parameters * sizeof *all);
    model_free(&copy);
    /* what a type cannot hold is found */
    all[m.tensor[TENSOR_fcw].offset + m.tensor[TENSOR_fcw].size - 5] = NAN;
    model_upload(&m, 0, all, m.parameters);
    assert_false(model_check_matrices(&m, "a model", &e));
    files_assert_error(&e, "a model: tensor fcw of layer 1 has weights that are not finite");
    free(all), free(some), model_free(&m);
    c.hidden = 40;
    assert_null(quant_plan(&c, QUANT_Q8_0, &e));
    files_assert_error(&e, "rows of 40 elements are not whole blocks of 32 of Q8_0");
}

static Model load(const char *path, const ModelLoad *how, ModelFile *f, Optimizer *o) {
    Error e;
    Model m;
    if (!model_load_as(&m, f, path, how, B, D, o, &e)) fail_msg("%s", e.text);
    return m;
}

static float *values_of(const Model *m, size_t n) {
    float *host = xmalloc(n * sizeof *host);
    model_download(m, 0, host, n);
    return host;
}

/* A random model whose shape every format of files can hold, with rows of padding after the vocabulary. */
static Model model_for_files(void) {
    Error e;
    Model m;
    ModelConfig c = config_of(1);
    c.layer[1] = 0;
    c.lora.rank = 0;
    c.vocab = 100;
    c.padded_vocab = 128;
    c.norm_eps = 1e-5f;
    if (!model_new(&m, &c, B, D, false, &e)) fail_msg("%s", e.text);
    adapted_randomize(&m, 12);
    return m;
}

/* A GGUF file's blocks are kept as they are, with the rows of queries and keys in the model's order: the values are those
 * of a model that is read as float32. A type that is made while loading is what quant_encode() makes of each row. Adapters
 * stay apart, in files and in models that are not trained. */
static void test_files(void **state) {
    (void)state;
    Error e;
    Model m = model_for_files(), n;
    ModelFile f = {.lineage = json_array()}, g;
    char gguf[256], ours[256], adapter[256], state_file[256];
    snprintf(gguf, sizeof gguf, "%s", files_path("base.gguf"));
    snprintf(ours, sizeof ours, "%s", files_path("base.safetensors"));
    snprintf(adapter, sizeof adapter, "%s", files_path("adapter"));
    snprintf(state_file, sizeof state_file, "%s", files_path("run.state"));
    if (!model_save(&m, &f, gguf, MODEL_Q8_0, NULL, NULL, &e)) fail_msg("%s", e.text);
    if (!model_save(&m, &f, ours, MODEL_FLOAT32, NULL, NULL, &e)) fail_msg("%s", e.text);
    model_free(&m), model_file_free(&f);

    const LoraConfig lora = {.rank = 2, .targets = LORA_ALL, .scale = 4};
    ModelLoad how = {.quantize = QUANTIZE_KEEP};
    m = load(gguf, &how, &f, NULL);
    n = load(gguf, &(ModelLoad){0}, &g, NULL);
    float *x = values_of(&m, m.parameters), *y = values_of(&n, m.parameters);
    assert_memory_equal(x, y, m.parameters * sizeof *x);
    assert_true(m.matrix && !n.matrix && model_weights_hash(&m) == model_weights_hash(&n));
    free(x), free(y), model_free(&m), model_file_free(&f), model_free(&n), model_file_free(&g);

    n = load(ours, &(ModelLoad){0}, &g, NULL);
    y = values_of(&n, n.parameters);
    for (int type = QUANTIZE_Q8_0; type <= QUANTIZE_Q4_0; type++) {
        how = (ModelLoad){.quantize = (Quantize)type};
        m = load(ours, &how, &f, NULL);
        x = values_of(&m, m.parameters);
        for (int i = 0; i < MATRIX_COUNT; i++) {
            const TensorInfo *t = &n.tensor[matrix_tensor[i]];
            const QuantType q = type == QUANTIZE_Q8_0 || i >= LINEAR_MATRICES ? QUANT_Q8_0 : QUANT_Q4_0;
            void *blocks = xmalloc(quant_bytes(q, t->size));
            float *want = xmalloc(t->size * sizeof *want);
            quant_encode(q, y + t->offset, blocks, t->size);
            quant_decode(q, blocks, want, t->size);
            assert_memory_equal(x + t->offset, want, t->size * sizeof *want);
            free(blocks), free(want);
        }
        free(x), model_free(&m), model_file_free(&f);
    }
    free(y), model_free(&n), model_file_free(&g);

    /* training: the base does not change, the state holds none of it, a merged output is the sum */
    Optimizer o, p;
    how = (ModelLoad){.gradients = true, .quantize = QUANTIZE_Q4_0, .lora = lora, .seed = 3};
    m = load(ours, &how, &f, &o);
    const size_t base = m.tensor[BASE_TENSORS].offset;
    x = values_of(&m, base);
    Batch b = adapted_batch(9);
    float logp[3][ROWS], *grads = xmalloc(m.grads_count * sizeof *grads);
    for (int i = 0; i < 3; i++) {
        adapted_pass(&m, &b, 0, logp[0], grads);
        assert_false(optimizer_step(&o, &m, 3e-2).skipped);
    }
    y = values_of(&m, base);
    assert_memory_equal(x, y, base * sizeof *x);
    adapted_pass(&m, &b, 0, logp[0], grads);
    if (!model_save(&m, &f, state_file, MODEL_FLOAT32, &o, "{}", &e)) fail_msg("%s", e.text);
    struct stat about;
    assert_true(!stat(state_file, &about) && (size_t)about.st_size < 4 * 3 * o.count + 20000);
    if (!peft_write(&m, adapter, "base", &e)) fail_msg("%s", e.text);
    if (!model_save(&m, &f, files_path("merged.safetensors"), MODEL_FLOAT32, NULL, NULL, &e)) fail_msg("%s", e.text);
    how.resume = state_file;
    n = load(ours, &how, &g, &p);
    adapted_pass(&n, &b, 0, logp[1], grads);
    assert_memory_equal(logp[0], logp[1], (size_t)b.targets * sizeof(float));
    assert_memory_equal(p.m, o.m, o.count * sizeof(float));
    optimizer_free(&p, &n), model_free(&n), model_file_free(&g);
    how.quantize = QUANTIZE_NONE;
    assert_false(model_load_as(&n, &g, ours, &how, B, D, &p, &e));
    files_assert_error(
        &e, "its adapters were trained on another model than that of -c (or with another --dtype or --quantize)");
    const struct {
        const char *path;
        ModelLoad how;
    } same[] = {{ours, {.quantize = QUANTIZE_Q4_0, .adapter = adapter}}, {files_path("merged.safetensors"), {0}}};
    for (int i = 0; i < 2; i++) {
        Workspace w;
        n = load(same[i].path, &same[i].how, &g, NULL);
        assert_true(workspace_new(&w, &n, b.rows, b.targets, b.segments, false, 0, &e));
        model_forward(&n, &w, &b, 1, &(ModelOutput){.logp = logp[2]});
        for (int k = 0; k < b.targets; k++) assert_true(fabs(logp[2][k] - logp[0][k]) < 1e-5);
        assert_int_equal(n.config.lora.rank, i ? 0 : 2);
        workspace_free(&w, &n), model_free(&n), model_file_free(&g);
    }
    free(x), free(y), free(grads), batch_free(&b);
    optimizer_free(&o, &m), model_free(&m), model_file_free(&f);

    how = (ModelLoad){.quantize = QUANTIZE_KEEP};
    assert_false(model_load_as(&n, &g, ours, &how, B, D, NULL, &e));
    files_assert_error(&e, "--quantize keep: the model is neither a folder nor a GGUF file");
}

/* Weights of every type that a GGUF output can have are kept, also 16-bit floats; in float32 there is nothing to keep. The
 * rows of padding after the vocabulary are floats, which tokens that are added can take. */
static void test_keep(void **state) {
    (void)state;
    Error e;
    Model m = model_for_files(), n;
    ModelFile f = {.lineage = json_array()}, g;
    const ModelLoad how = {.quantize = QUANTIZE_KEEP};
    static const ModelDtype dtypes[] = {MODEL_F16, MODEL_BF16, MODEL_Q8_0};
    static const QuantType types[] = {QUANT_F16, QUANT_BF16, QUANT_Q8_0};
    for (int i = 0; i < 3; i++) {
        const char *path = files_path("kept.gguf");
        if (!model_save(&m, &f, path, dtypes[i], NULL, NULL, &e)) fail_msg("%s", e.text);
        n = load(path, &how, &g, NULL);
        const QuantMatrix *wte = model_blocks_of(&n, TENSOR_wte, 0);
        assert_true(wte && wte->parts == 2 && wte->type[0] == (int)types[i] && wte->type[1] == QUANT_F32);
        assert_true(model_output_blocks(&n) && !model_output_weights(&n) && wte->rows[0] == 100 && wte->rows[1] == 28);
        const size_t C = (size_t)n.config.width, all = n.parameters;
        float *before = values_of(&n, all);
        model_grow_vocab(&n, 110, 5);
        float *after = values_of(&n, all);
        for (size_t k = 0; k < n.tensor[TENSOR_wte].size; k++) {
            if (k < 100 * C || k >= 110 * C) assert_true(after[k] == before[k] && (k < 100 * C || after[k] == 0));
            else assert_true(before[k] == 0 && after[k] != 0);
        }
        free(before), free(after), model_free(&n), model_file_free(&g);
    }
    const char *path = files_path("floats.gguf");
    if (!model_save(&m, &f, path, MODEL_FLOAT32, NULL, NULL, &e)) fail_msg("%s", e.text);
    assert_false(model_load_as(&n, &g, path, &how, B, D, NULL, &e));
    files_assert_error(&e, "its weights are all float32: --quantize keep has nothing to keep");
    model_free(&m), model_file_free(&f);
}

static const char *const families[] = {"gpt2",    "llama-a", "llama-b", "mistral", "qwen2",  "qwen3",      "qwen3-odd",
                                       "smollm3", "olmo2",   "phi3",    "gemma2",  "gemma3", "qwen2-yarn", "gpt2-bare"};

/* Loads a folder with adapters that are not 0, kept or as float32. */
static Model load_family(const char *path, Quantize quantize, ModelFile *f) {
    const ModelLoad how = {
        .gradients = true, .quantize = quantize, .lora = {.rank = 2, .targets = LORA_ALL, .scale = 1.5f}, .seed = 3};
    Model m = load(path, &how, f, NULL);
    const size_t first = m.tensor[FIRST_LORA_TENSOR].offset, n = m.parameters - first;
    float *host = xmalloc(n * sizeof *host);
    Random r = random_start(5, 0);
    random_normals(&r, 0.1, host, n);
    model_upload(&m, first, host, n);
    free(host);
    return m;
}

/* Two passes over the same values in another order of sums; the bounds are those of test_equals_values(). */
static void assert_same_passes(Model *m, Model *plain, const char *name) {
    Batch b = adapted_batch(5);
    float logp[2][ROWS], *grads[2];
    assert_int_equal(m->grads_count, plain->grads_count);
    for (int i = 0; i < 2; i++) {
        grads[i] = xmalloc(m->grads_count * sizeof **grads);
        adapted_pass(i ? plain : m, &b, 0, logp[i], grads[i]);
    }
    for (int i = 0; i < b.targets; i++)
        if (!(fabs(logp[0][i] - logp[1][i]) < 2e-5)) fail_msg("%s: %.9g, %.9g", name, logp[0][i], logp[1][i]);
    for (int i = FIRST_LORA_TENSOR; i < TENSOR_COUNT; i++) {
        double most = 0, worst = 0;
        for (size_t k = m->grads_offset[i]; k < m->grads_offset[i] + m->tensor[i].size; k++) {
            most = fmax(most, fabs(grads[1][k]));
            worst = fmax(worst, fabs((double)grads[0][k] - grads[1][k]));
        }
        if (!(worst <= 1e-4 * most)) fail_msg("%s, %s: %g of %g", name, m->tensor[i].name, worst, most);
    }
    free(grads[0]), free(grads[1]), batch_free(&b);
}

/* Copies a folder of tests/golden/families to files_path("odd"). A space is added to the header, whose length is a multiple of
 * 8, so that all values begin at odd addresses. */
static void copy_to_odd_places(const char *folder) {
    char path[300];
    size_t n;
    uint64_t header;
    mkdir(files_path("odd"), 0755);
    snprintf(path, sizeof path, "%s/config.json", folder);
    uint8_t *bytes = files_get(path, &n);
    files_put(files_path("odd/config.json"), bytes, n);
    free(bytes);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    bytes = files_get(path, &n);
    memcpy(&header, bytes, sizeof header);
    assert_int_equal(header % 8, 0);
    const size_t values = sizeof header + header;
    uint8_t *moved = xmalloc(n + 1);
    header++;
    memcpy(moved, bytes, values);
    memcpy(moved, &header, sizeof header);
    moved[values] = ' ';
    memcpy(moved + values + 1, bytes + values, n - values);
    files_put(files_path("odd/model.safetensors"), moved, n + 1);
    free(bytes), free(moved);
}

/* Compares a folder of this family, kept, with `plain`, the same model read as float32: the values, what is mapped, passes, and
 * a copy. */
static void check_kept_folder(const char *path, const char *family, Model *plain) {
    Error e;
    ModelFile f;
    Model m = load_family(path, QUANTIZE_KEEP, &f), copy;
    const bool transposed = !strncmp(family, "gpt2", 4);
    float *x = values_of(&m, m.parameters), *y = values_of(plain, plain->parameters);
    assert_memory_equal(x, y, m.parameters * sizeof *x);
    assert_true(model_weights_hash(&m) == model_weights_hash(plain));
    for (int k = 0; k < MATRIX_COUNT; k++) {
        const QuantMatrix *q = model_blocks_of(&m, matrix_tensor[k], m.tensor[matrix_tensor[k]].layers > 1);
        const bool padded = k >= LINEAR_MATRICES; /* the last range is that of padding */
        if (m.tensor[matrix_tensor[k]].size && (!transposed || padded))
            assert_int_equal(q->mapped, (1 << (q->parts - padded)) - 1);
        else assert_true(!m.tensor[matrix_tensor[k]].size || !q->mapped);
    }
    assert_same_passes(&m, plain, family);
    assert_true(m.mapping && model_copy(&copy, &m, &e));
    float *z = values_of(&copy, copy.parameters);
    assert_memory_equal(x, z, m.parameters * sizeof *x);
    free(x), free(y), free(z);
    model_free(&copy), model_free(&m), model_file_free(&f);
}

/* Matrices of a folder are used where its files are mapped, at any address, unless they are transposed, as GPT-2's are: the
 * values are those of a model that is read as float32, and so is what is written. */
static void test_folders(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        ModelFile f;
        char path[256];
        snprintf(path, sizeof path, "tests/golden/families/%s", families[i]);
        Model plain = load_family(path, QUANTIZE_NONE, &f);
        check_kept_folder(path, families[i], &plain);
        copy_to_odd_places(path);
        check_kept_folder(files_path("odd"), families[i], &plain);
        model_free(&plain), model_file_free(&f);
    }
}

/* A folder in each type of floats, and what is not finite in it. */
static void test_folder_types(void **state) {
    (void)state;
    static const ModelDtype dtypes[] = {MODEL_F16, MODEL_BF16, MODEL_FLOAT32};
    static const QuantType types[] = {QUANT_F16, QUANT_BF16, QUANT_F32};
    static const size_t bytes[] = {2, 2, 4};
    const ModelLoad how = {.quantize = QUANTIZE_KEEP};
    Model m = model_for_files(), n;
    ModelFile f = {.lineage = json_array()}, g;
    for (int i = 0; i < 3; i++) {
        Error e;
        char path[256], file[300];
        snprintf(path, sizeof path, "%s/", files_path(model_dtype_name[dtypes[i]]));
        snprintf(file, sizeof file, "%smodel.safetensors", path);
        if (!model_save(&m, &f, path, dtypes[i], NULL, NULL, &e)) fail_msg("%s", e.text);
        n = load(path, &how, &g, NULL);
        const QuantMatrix *wte = model_blocks_of(&n, TENSOR_wte, 0);
        assert_true(wte->parts == 2 && wte->type[0] == (int)types[i] && wte->type[1] == QUANT_F32 && wte->mapped == 1);
        model_free(&n), model_file_free(&g);
        const int fd = open(file, O_RDWR); /* the last value of a matrix becomes NaN */
        Safetensors s;
        if (!safetensors_open(&s, file, &e)) fail_msg("%s", e.text);
        const SafeTensor *t = safetensors_find(&s, "model.layers.1.mlp.up_proj.weight");
        const off_t at = (off_t)(t->data - s.file) + (off_t)(bytes[i] * (t->elements - 1));
        safetensors_close(&s);
        assert_true(fd >= 0 && pwrite(fd, "\xff\xff\xff\xff", bytes[i], at) == (ssize_t)bytes[i] && !close(fd));
        assert_false(model_load_as(&n, &g, path, &how, B, D, NULL, &e));
        files_assert_error(&e, "the weight fcw of layer 1 has the value");
    }
    model_free(&m), model_file_free(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_equals_values), cmocka_unit_test(test_rollout_logp),
                                       cmocka_unit_test(test_elements),      cmocka_unit_test(test_files),
                                       cmocka_unit_test(test_keep),          cmocka_unit_test(test_folders),
                                       cmocka_unit_test(test_folder_types)};
    open_device_one_thread(NULL);
    files_setup(NULL);
    const int failed = cmocka_run_group_tests_name("qlora", tests, NULL, NULL);
    files_teardown(NULL);
    return failed + close_device(NULL);
}
