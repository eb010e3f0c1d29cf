/* models.h - tiny models and readers of JSON output, for the tests of the programs.
 *
 *   random     GPT-2's initial weights times 8; only printable tokens have an embedding, so greedy text is ASCII
 *   longrope   the same with rotary positions whose frequencies depend on the length of the longest sequence
 *   scripted   the layers contribute nothing, so the position alone decides: position p is followed by script[p] with a
 *              probability of almost 1, or by one of two scripts, each in about half of the samples
 */
#ifndef TESTS_MODELS_H
#define TESTS_MODELS_H

#include "../llmc/base/error.h"        /* Error, xmalloc, xcalloc, xstrdup */
#include "../llmc/base/text.h"         /* TokenList, token_list_free */
#include "../llmc/cpu/cpu.h"           /* backend_cpu */
#include "../llmc/model/backend.h"     /* DTYPE_FLOAT32, Device, MLP_SWIGLU, NORM_RMS */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/config.h"      /* ModelConfig, gpt2_config, FAMILY_PHI3, POSITION_ROTARY, ... */
#include "../llmc/model/model.h"       /* Model, model_init, model_new, model_free, ... */
#include "../llmc/model/model_file.h"  /* MODEL_FLOAT32, model_load, model_save */
#include "../llmc/model/model_load.h"  /* ModelFile, model_file_free */
#include "../llmc/model/pack.h"        /* batch_free, batch_new, batch_segment, batch_target */
#include "../llmc/model/tensors.h"     /* INIT_NORMAL, INIT_RESIDUAL, TENSOR_COUNT, TENSOR_ln1w, ... */
#include "../llmc/model/transformer.h" /* model_logits */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "../llmc/records/shard.h"     /* ShardWriter, Record, RecordKind, shard_add, ... */
#include "../llmc/text/tokenizer.h"    /* tokenizer_store, Tokenizer, tokenizer_bytes, tokenizer_encode, ... */
#include "files.h"                     /* files_path, files_directory, files_setup, files_teardown */
#include "shell.h"                     /* out, refused_output, said */

enum { MODELS_VOCAB = 260, MODELS_EOS = 256, MODELS_IM_END = 258 };

static Device *models_device;
static Tokenizer models_bytes;

static inline int models_setup(void **state) {
    Error e;
    omp_set_num_threads(1);
    setenv("OMP_NUM_THREADS", "1", 1);
    if (files_setup(state) || !tokenizer_bytes(&models_bytes, &e)) return 1;
    if (!backend_cpu()->open(&models_device, DTYPE_FLOAT32, &e)) return 1;
    return setenv("T", files_directory, 1);
}

static inline int models_teardown(void **state) {
    free(said), free(out);
    tokenizer_free(&models_bytes);
    backend_cpu()->close(models_device);
    return files_teardown(state);
}

/* ---- models ---------------------------------------------------------------------------------------------------- */

static inline Model models_new(int layers, int width, int context) {
    Error e;
    Model m;
    const ModelConfig c = gpt2_config(layers, 2, width, MODELS_VOCAB, context);
    if (!model_new(&m, &c, backend_cpu(), models_device, false, &e)) fail_msg("%s", e.text);
    model_init(&m, 7);
    return m;
}

/* Multiplies the initial matrices, and clears the rows of the output matrix whose tokens are not printable. */
static inline void models_multiply(Model *m, float by) {
    float *w = (float *)xmalloc(m->parameters * sizeof *w);
    model_download(m, 0, w, m->parameters);
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (size_t k = 0; k < m->tensor[i].size; k++) {
            float *x = &w[m->tensor[i].offset + k];
            if (m->tensor[i].init == INIT_NORMAL || m->tensor[i].init == INIT_RESIDUAL) *x *= by;
            const size_t token = k / m->tensor[i].columns;
            if (i == model_output_tensor(&m->config) && (token < 32 || token > 126)) *x = 0;
        }
    model_upload(m, 0, w, m->parameters);
    free(w);
}

static inline Model models_random(int context) {
    Model m = models_new(2, 32, context);
    models_multiply(&m, 8);
    return m;
}

/* A random model of Phi-3's family with longrope, whose two lists give different greedy text. original: its context before it
 * was stretched. */
static inline Model models_longrope(int context, int original) {
    Error e;
    Model m;
    ModelConfig c = gpt2_config(2, 2, 32, MODELS_VOCAB, context);
    c.family = FAMILY_PHI3;
    c.norm = NORM_RMS;
    c.qkv_bias = c.attproj_bias = c.mlp_bias = c.tied = 0;
    c.mlp = MLP_SWIGLU;
    c.position = POSITION_ROTARY;
    c.rotary = c.head_size;
    c.rope = (Rope){.kind = ROPE_LONGROPE, .theta = 1e4f, .original = original, .list_count = c.rotary / 2};
    c.rope.factor = (float)context / (float)original;
    c.rope.attention = (float)sqrt(1 + log(c.rope.factor) / log(original));
    for (int i = 0; i < c.rotary / 2; i++) {
        c.rope.short_list[i] = 1;
        c.rope.long_list[i] = 2 + (float)i;
    }
    if (!model_new(&m, &c, backend_cpu(), models_device, false, &e)) fail_msg("%s", e.text);
    model_init(&m, 11);
    models_multiply(&m, 12);
    return m;
}

/* a, b: n tokens each; b NULL: a alone. Position p is followed by a[p] or b[p], positions from n on by the end of
 * text. */
static inline Model models_scripted(int context, const int32_t *a, const int32_t *b, int n) {
    Model m = models_new(1, 128, context);
    float *w = (float *)xcalloc(m.parameters, sizeof *w), *wte = w + m.tensor[TENSOR_wte].offset,
          *wpe = w + m.tensor[TENSOR_wpe].offset;
    const int C = m.config.width;
    uint32_t x = 1;
    for (int i = 0; i < MODELS_VOCAB * C; i++) {
        x = x * 1664525 + 1013904223;
        wte[i] = x >> 31 ? 1.0f : -1.0f;
    }
    for (int p = 0; p < context; p++)
        for (int c = 0; c < C; c++) {
            const int s = p < n ? a[p] : MODELS_EOS, t = p < n && b ? b[p] : s;
            wpe[p * C + c] = 1e4f * (wte[s * C + c] + wte[t * C + c]);
        }
    for (int l = 0; l < m.config.layers; l++)
        for (int c = 0; c < C; c++)
            w[m.tensor[TENSOR_ln1w].offset + (size_t)(l * C + c)] =
                w[m.tensor[TENSOR_ln2w].offset + (size_t)(l * C + c)] = 1;
    for (int c = 0; c < C; c++) w[m.tensor[TENSOR_lnfw].offset + (size_t)c] = 1;
    m.backend->weights_upload(m.device, m.weights, w, m.parameters);
    free(w);
    return m;
}

/* Saves the model with the byte tokenizer unless bare, and with a chat template if one is given. */
static inline void models_save(const Model *m, const char *name, bool bare, const char *template) {
    Error e;
    ModelFile f = {.lineage = json_array()};
    if (!bare && !tokenizer_store(&models_bytes, &f.tokenizer, &f.tokenizer_bytes, &e)) fail_msg("%s", e.text);
    if (template) f.chat_template = xstrdup(template);
    if (!model_save(m, &f, files_path(name), MODEL_FLOAT32, NULL, NULL, &e)) fail_msg("%s", e.text);
    model_file_free(&f);
}

/* Writes a new model of a golden model's shape (tests/golden/families), with a token per byte, as a folder. */
static inline void models_family(const char *golden, const char *folder, uint64_t seed) {
    Error e;
    Model like, m;
    ModelFile f;
    char path[256];
    snprintf(path, sizeof path, "tests/golden/families/%s", golden);
    if (!model_load(&like, &f, path, NULL, false, backend_cpu(), models_device, false, 0, NULL, &e))
        fail_msg("%s", e.text);
    ModelConfig c = like.config;
    model_free(&like), model_file_free(&f);
    c.vocab = 300;
    c.padded_vocab = gpt2_padded_vocab(c.vocab);
    c.context = 64;
    if (!model_new(&m, &c, backend_cpu(), models_device, false, &e)) fail_msg("%s", e.text);
    model_init(&m, seed);
    models_save(&m, folder, false, NULL);
    model_free(&m);
}

/* Logits (n, V) of all n positions, from one forward pass without a cache. */
static inline float *models_logits(const Model *m, const int32_t *ids, int n) {
    Error e;
    Workspace w;
    Batch b = batch_new(n, n, 1);
    float *logits = (float *)xmalloc((size_t)n * MODELS_VOCAB * sizeof *logits);
    if (!workspace_new(&w, m, n, n, 1, false, 0, &e)) fail_msg("%s", e.text);
    batch_segment(&b, ids, n, 0, -1);
    for (int i = 0; i < n; i++) batch_target(&b, i, 0);
    if (!model_logits(m, &w, &b, logits, &e)) fail_msg("%s", e.text);
    workspace_free(&w, m), batch_free(&b);
    return logits;
}

static inline int models_argmax(const float *z) {
    int best = 0;
    for (int v = 1; v < MODELS_VOCAB; v++)
        if (z[v] > z[best]) best = v;
    return best;
}

/* -ln softmax(z / temperature)[target], in double. */
static inline double models_nats(const float *z, double temperature, int target) {
    double sum = 0;
    for (int v = 0; v < MODELS_VOCAB; v++) sum += exp((z[v] - z[target]) / temperature);
    return log(sum);
}

/* ---- shards ---------------------------------------------------------------------------------------------------- */

static inline ShardWriter models_shard(const char *name, RecordKind kind, const char *template) {
    Error e;
    ShardWriter w;
    void *blob = NULL;
    size_t n = 0;
    if (!tokenizer_store(&models_bytes, &blob, &n, &e)) fail_msg("%s", e.text);
    if (!shard_create(&w, files_path(name), kind, MODELS_VOCAB, blob, n, template, &e)) fail_msg("%s", e.text);
    free(blob);
    return w;
}

static inline void models_add_prompt(ShardWriter *w, const char *text, const char *task, const char *answer,
                                     const char *fields) {
    Error e;
    TokenList ids = {0};
    assert_true(tokenizer_encode(&models_bytes, text, strlen(text), false, &ids, &e));
    const Record r = {.tokens = ids.ids,
                      .count = ids.count,
                      .prompt = ids.count,
                      .text = text,
                      .task = task,
                      .answer = answer,
                      .fields = fields};
    if (!shard_add(w, &r, &e)) fail_msg("%s", e.text);
    token_list_free(&ids);
}

static inline void models_commit(ShardWriter *w) {
    Error e;
    if (!shard_commit(w, &e)) fail_msg("%s", e.text);
}

/* ---- programs (shell.h runs them) ------------------------------------------------------------------------------ */

/* Runs a command that must fail with one line that contains `part`, print nothing on standard output and leave $T/kept
 * unchanged. */
static inline void refused(int status, const char *command, const char *part) {
    refused_output("kept", status, command, part);
}

/* Parses line n (from 0) of a text of JSON lines. The result must be freed. */
static inline json_t *json_line_of(const char *text, int n) {
    json_error_t bad;
    while (n-- > 0) {
        text = strchr(text, '\n');
        assert_non_null(text);
        text++;
    }
    json_t *row = json_loadb(text, strcspn(text, "\n"), JSON_ALLOW_NUL, &bad);
    if (!row) fail_msg("%s: %s", bad.text, text);
    return row;
}

static inline int lines_of(const char *text) {
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

static inline const char *json_text_of(const json_t *row, const char *key) {
    const char *text = json_string_value(json_object_get(row, key));
    if (!text) fail_msg("no text in %s", key);
    return text;
}

static inline double json_number_of(const json_t *row, const char *key) {
    if (!json_is_number(json_object_get(row, key))) fail_msg("no number in %s", key);
    return json_number_value(json_object_get(row, key));
}

static inline void assert_near(double got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance)) fail_msg("%.12g, expected %.12g", got, want);
}

#endif
