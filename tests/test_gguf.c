/* test_gguf.c - GGUF files: models of every architecture that llama.cpp's converter wrote are read with the weights
 * that transformers saved, and written with the same bytes; damaged and unsupported files are refused with one line. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/error.h"          /* Error, xmalloc, error_set */
#include "../llmc/base/text.h"           /* TextSlice */
#include "../llmc/model/backend.h"       /* QUANT_F16, QUANT_F32, QUANT_Q8_0, QuantType, ... */
#include "../llmc/model/config.h"        /* ModelConfig, Rope, LAYER_WINDOW, ROPE_LLAMA3, ... */
#include "../llmc/model/gguf.h"          /* GgufWriter, Gguf, gguf_close, gguf_open, ... */
#include "../llmc/model/gguf_config.h"   /* gguf_rope_of_factors, gguf_llama3_factor */
#include "../llmc/model/gguf_model.h"    /* gguf_load, GgufTokenizer, gguf_config, gguf_tokenizer, ... */
#include "../llmc/model/gguf_save.h"     /* GgufOut, gguf_save */
#include "../llmc/model/model.h"         /* MODEL_CHUNK, Model, model_free, model_new */
#include "../llmc/model/model_gguf.h"    /* ModelGguf, model_gguf_get, model_gguf_put */
#include "../llmc/model/quantized.h"     /* quant_decode */
#include "../llmc/model/tensors.h"       /* TENSOR_fcw, TENSOR_headw, TENSOR_ln2w, TENSOR_wte, ... */
#include "../llmc/text/tokenizer_gguf.h" /* GGUF_TOKEN_CONTROL, GGUF_TOKEN_NORMAL, GGUF_TOKEN_UNKNOWN, ... */
#include "cpu_device.h"                  /* B, D, close_device, open_device_one_thread */
#include "files.h"                       /* files_path, files_assert_error, files_directory, files_feed_stdin, ... */
#include <math.h>

/* ---- the golden models: configurations and weights, from dev/golden/golden_gguf.py ------------------------------- */

enum { VOCAB = 24 };

static const char *const models[] = {"llama", "llama-linear", "llama-fused",   "mistral", "qwen2",  "qwen3", "smollm3",
                                     "olmo2", "phi3",         "phi3-longrope", "gemma2",  "gemma3", "gpt2"};
enum { MODELS = sizeof models / sizeof *models };

static ModelConfig base_config(Family family, int head_size) {
    return (ModelConfig){.family = family,
                         .context = 64,
                         .vocab = VOCAB,
                         .padded_vocab = 128,
                         .layers = 2,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_size = head_size,
                         .width = 32,
                         .hidden = 48,
                         .norm = NORM_RMS,
                         .norm_eps = 1e-6f,
                         .position = POSITION_ROTARY,
                         .rotary = head_size,
                         .rope = {.theta = 1e4f},
                         .mlp = MLP_SWIGLU,
                         .tied = 1};
}

static ModelConfig gemma_config(Family family) {
    ModelConfig c = base_config(family, 12);
    c.norm_plus_one = 1;
    c.norm_place = NORM_BOTH;
    c.mlp = MLP_GEGLU;
    c.window = 9;
    c.score_scale = 1 / sqrtf(12);
    if (family == FAMILY_GEMMA2) {
        c.embed_scale = sqrtf(32);
        c.score_cap = 3;
        c.logit_cap = 5;
        c.layer[0] = LAYER_WINDOW;
        return c;
    }
    c.embed_scale = 4;
    c.width = 16;
    c.hidden = 24;
    c.layers = 7;
    c.heads = 2;
    c.kv_heads = 1;
    c.qk_norm = QK_NORM_HEAD;
    c.rope = (Rope){.kind = ROPE_LINEAR, .theta = 1e6f, .factor = 8};
    c.local_rope.theta = 1e4f;
    for (int l = 0; l < 7; l++) c.layer[l] = l == 5 ? 0 : LAYER_WINDOW;
    return c;
}

static ModelConfig llama_config(const char *name) {
    ModelConfig c = base_config(FAMILY_LLAMA, !strcmp(name, "llama") || !strcmp(name, "mistral") ? 12 : 8);
    if (!strcmp(name, "llama")) {
        c.qkv_bias = c.attproj_bias = c.mlp_bias = 1;
        c.tied = 0;
        c.norm_eps = 1e-5f;
        c.rope = (Rope){.kind = ROPE_LLAMA3, .theta = 500, .factor = 8, .low = 1, .high = 4, .original = 16};
    } else if (!strcmp(name, "llama-linear")) {
        c.kv_heads = 4;
        c.rope = (Rope){.kind = ROPE_LINEAR, .theta = 1e4f, .factor = 2.5f};
    } else if (!strcmp(name, "llama-fused")) c.qkv_bias = c.attproj_bias = 1;
    else c.tied = 0; /* mistral: its window is not in the file */
    return c;
}

static ModelConfig phi3_config(bool longrope) {
    ModelConfig c = base_config(FAMILY_PHI3, 8);
    c.norm_eps = 1e-5f;
    c.tied = 0;
    if (!longrope) {
        c.rotary = 6;
        c.window = 9;
        c.layer[0] = c.layer[1] = LAYER_WINDOW;
        return c;
    }
    c.rope = (Rope){.kind = ROPE_LONGROPE,
                    .theta = 1e4f,
                    .factor = 64.0f / 24,
                    .attention = (float)sqrt(1 + log(64.0 / 24) / log(24)),
                    .original = 24,
                    .list_count = 4,
                    .short_list = {1, 1.05f, 1.2f, 1.5f},
                    .long_list = {1.1f, 1.6f, 2.3f, 2.6f}};
    return c;
}

static ModelConfig expected_config(const char *name) {
    ModelConfig c;
    if (!strncmp(name, "llama", 5) || !strcmp(name, "mistral")) return llama_config(name);
    if (!strcmp(name, "gemma2")) return gemma_config(FAMILY_GEMMA2);
    if (!strcmp(name, "gemma3")) return gemma_config(FAMILY_GEMMA3);
    if (!strncmp(name, "phi3", 4)) return phi3_config(strlen(name) > 4);
    if (!strcmp(name, "gpt2")) return gpt2_config(2, 4, 32, VOCAB, 16);
    if (!strcmp(name, "qwen2")) {
        c = base_config(FAMILY_QWEN2, 8);
        c.qkv_bias = 1;
        c.rope = (Rope){.kind = ROPE_YARN, .theta = 100, .factor = 4, .beta_fast = 32, .beta_slow = 1, .original = 16};
    } else if (!strcmp(name, "qwen3")) {
        c = base_config(FAMILY_QWEN3, 12);
        c.qk_norm = QK_NORM_HEAD;
        c.rope.theta = 1e6f;
    } else if (!strcmp(name, "smollm3")) {
        c = base_config(FAMILY_SMOLLM3, 8);
        c.layers = 4;
        c.hidden = 24;
        c.layer[3] = LAYER_NO_ROPE;
        c.rope.theta = 5e6f;
    } else {
        c = base_config(FAMILY_OLMO2, 8);
        c.norm_eps = 1e-5f;
        c.norm_place = NORM_POST;
        c.qk_norm = QK_NORM_ROW;
        c.tied = 0;
        c.rope.theta = 5e5f;
    }
    return c;
}

/* Element i of the tensor with this name in the safetensors file. */
static float weight(const char *name, size_t i) {
    uint32_t seed = 2166136261u;
    for (; *name; name++) seed = (seed ^ (uint8_t)*name) * 16777619u;
    uint32_t x = (uint32_t)i * 2654435761u + seed;
    x ^= x >> 15;
    return (float)((int)(x >> 8 & 255) - 128) / 64;
}

/* Values of a whole model in the order of tensors.h. */
typedef struct Values {
    ModelConfig config;
    TensorInfo t[TENSOR_COUNT];
    size_t count;
    float *v;
    int calls_left; /* put() fails when it becomes 0 */
} Values;

static Values new_values(const ModelConfig *c) {
    Values m = {.config = *c, .calls_left = -1};
    m.count = model_tensors(c, m.t);
    m.v = xmalloc(m.count * sizeof *m.v);
    for (size_t i = 0; i < m.count; i++) m.v[i] = NAN;
    return m;
}

static float *values_at(Values *m, int tensor, int layer) {
    const TensorInfo *t = &m->t[tensor];
    return m->v + t->offset + (size_t)layer * t->rows * t->columns;
}

/* Stores the tensor of a safetensors file after the first `at` elements of a layer of the model's tensor, and returns
 * the place after it. transposed: the file has (columns, rows). */
static size_t fill(Values *m, int tensor, int layer, size_t at, const char *name, size_t rows, size_t columns,
                   bool transposed) {
    float *to = values_at(m, tensor, layer) + at;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < columns; c++)
            to[r * columns + c] = weight(name, transposed ? c * rows + r : r * columns + c);
    return at + rows * columns;
}

static char *layer_name(int l, const char *format, const char *suffix) {
    static char name[4][128];
    static int turn;
    char *to = name[turn++ % 4];
    snprintf(to, sizeof name[0], format, l, suffix);
    return to;
}

/* A whole tensor of a layer. */
static void fill_layer(Values *m, int tensor, int l, const char *format, const char *suffix) {
    const TensorInfo *t = &m->t[tensor];
    fill(m, tensor, l, 0, layer_name(l, format, suffix), t->rows, t->columns, false);
}

static void fill_gpt2_layer(Values *m, int l) {
    const size_t C = 32;
    fill_layer(m, TENSOR_ln1w, l, "transformer.h.%d.ln_1.%s", "weight");
    fill_layer(m, TENSOR_ln1b, l, "transformer.h.%d.ln_1.%s", "bias");
    fill(m, TENSOR_qkvw, l, 0, layer_name(l, "transformer.h.%d.attn.c_attn.%s", "weight"), 3 * C, C, true);
    fill_layer(m, TENSOR_qkvb, l, "transformer.h.%d.attn.c_attn.%s", "bias");
    fill(m, TENSOR_attprojw, l, 0, layer_name(l, "transformer.h.%d.attn.c_proj.%s", "weight"), C, C, true);
    fill_layer(m, TENSOR_attprojb, l, "transformer.h.%d.attn.c_proj.%s", "bias");
    fill_layer(m, TENSOR_ln2w, l, "transformer.h.%d.ln_2.%s", "weight");
    fill_layer(m, TENSOR_ln2b, l, "transformer.h.%d.ln_2.%s", "bias");
    fill(m, TENSOR_fcw, l, 0, layer_name(l, "transformer.h.%d.mlp.c_fc.%s", "weight"), 4 * C, C, true);
    fill_layer(m, TENSOR_fcb, l, "transformer.h.%d.mlp.c_fc.%s", "bias");
    fill(m, TENSOR_fcprojw, l, 0, layer_name(l, "transformer.h.%d.mlp.c_proj.%s", "weight"), C, 4 * C, true);
    fill_layer(m, TENSOR_fcprojb, l, "transformer.h.%d.mlp.c_proj.%s", "bias");
}

static void fill_attention(Values *m, int l, const char *suffix, size_t columns) {
    const ModelConfig *c = &m->config;
    const int tensor = columns > 1 ? TENSOR_qkvw : TENSOR_qkvb;
    const size_t q = (size_t)model_q_width(c), kv = (size_t)model_kv_width(c);
    size_t at = 0;
    if (c->family == FAMILY_PHI3) {
        fill_layer(m, tensor, l, "model.layers.%d.self_attn.qkv_proj.%s", suffix);
        return;
    }
    at = fill(m, tensor, l, at, layer_name(l, "model.layers.%d.self_attn.q_proj.%s", suffix), q, columns, false);
    at = fill(m, tensor, l, at, layer_name(l, "model.layers.%d.self_attn.k_proj.%s", suffix), kv, columns, false);
    fill(m, tensor, l, at, layer_name(l, "model.layers.%d.self_attn.v_proj.%s", suffix), kv, columns, false);
}

static void fill_mlp(Values *m, int l, const char *suffix, size_t columns) {
    const int tensor = columns > 1 ? TENSOR_fcw : TENSOR_fcb;
    const size_t f = (size_t)m->config.hidden;
    if (m->config.family == FAMILY_PHI3) {
        fill_layer(m, tensor, l, "model.layers.%d.mlp.gate_up_proj.%s", suffix);
        return;
    }
    fill(m, tensor, l, 0, layer_name(l, "model.layers.%d.mlp.gate_proj.%s", suffix), f, columns, false);
    fill(m, tensor, l, f * columns, layer_name(l, "model.layers.%d.mlp.up_proj.%s", suffix), f, columns, false);
}

static void fill_norms(Values *m, int l) {
    const NormPlace place = m->config.norm_place;
    if (place != NORM_POST) fill_layer(m, TENSOR_ln1w, l, "model.layers.%d.input_layernorm.%s", "weight");
    if (place == NORM_PRE) fill_layer(m, TENSOR_ln2w, l, "model.layers.%d.post_attention_layernorm.%s", "weight");
    if (place == NORM_BOTH) fill_layer(m, TENSOR_ln2w, l, "model.layers.%d.pre_feedforward_layernorm.%s", "weight");
    if (place != NORM_PRE) {
        fill_layer(m, TENSOR_attpostw, l, "model.layers.%d.post_attention_layernorm.%s", "weight");
        fill_layer(m, TENSOR_mlppostw, l, "model.layers.%d.post_feedforward_layernorm.%s", "weight");
    }
    if (m->config.qk_norm == QK_NORM_NONE) return;
    fill_layer(m, TENSOR_qnormw, l, "model.layers.%d.self_attn.q_norm.%s", "weight");
    fill_layer(m, TENSOR_knormw, l, "model.layers.%d.self_attn.k_norm.%s", "weight");
}

/* The weights that transformers saved. */
static Values expected_values(const ModelConfig *c) {
    Values m = new_values(c);
    const bool gpt2 = c->family == FAMILY_GPT2;
    const size_t C = (size_t)c->width;
    for (size_t i = 0; i < m.t[TENSOR_wte].size; i++) m.v[i] = 0;
    for (size_t i = 0; i < m.t[TENSOR_headw].size; i++) values_at(&m, TENSOR_headw, 0)[i] = 0;
    fill(&m, TENSOR_wte, 0, 0, gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight", VOCAB, C, false);
    if (gpt2) {
        fill(&m, TENSOR_wpe, 0, 0, "transformer.wpe.weight", 16, C, false);
        fill(&m, TENSOR_lnfb, 0, 0, "transformer.ln_f.bias", 1, C, false);
    }
    fill(&m, TENSOR_lnfw, 0, 0, gpt2 ? "transformer.ln_f.weight" : "model.norm.weight", 1, C, false);
    if (!c->tied) fill(&m, TENSOR_headw, 0, 0, "lm_head.weight", VOCAB, C, false);
    for (int l = 0; l < c->layers; l++) {
        if (gpt2) {
            fill_gpt2_layer(&m, l);
            continue;
        }
        fill_norms(&m, l);
        fill_attention(&m, l, "weight", C);
        if (c->qkv_bias) fill_attention(&m, l, "bias", 1);
        fill_layer(&m, TENSOR_attprojw, l, "model.layers.%d.self_attn.o_proj.%s", "weight");
        if (c->attproj_bias) fill_layer(&m, TENSOR_attprojb, l, "model.layers.%d.self_attn.o_proj.%s", "bias");
        fill_mlp(&m, l, "weight", C);
        if (c->mlp_bias) fill_mlp(&m, l, "bias", 1);
        fill_layer(&m, TENSOR_fcprojw, l, "model.layers.%d.mlp.down_proj.%s", "weight");
        if (c->mlp_bias) fill_layer(&m, TENSOR_fcprojb, l, "model.layers.%d.mlp.down_proj.%s", "bias");
    }
    for (size_t i = 0; i < m.count; i++) assert_false(isnan(m.v[i]));
    return m;
}

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

/* A GgufPut: every element is stored exactly once. */
static bool put(void *context, int tensor, int layer, size_t first, const float *values, size_t n, Error *e) {
    Values *m = context;
    assert_true(first + n <= m->t[tensor].rows * m->t[tensor].columns && (size_t)layer < m->t[tensor].layers);
    float *to = values_at(m, tensor, layer) + first;
    if (m->calls_left >= 0 && !m->calls_left--) return error_set(e, "the test's own failure");
    for (size_t i = 0; i < n; i++) {
        assert_true(isnan(to[i]));
        to[i] = values[i];
    }
    return true;
}

/* A GgufGet. */
static bool get(void *context, int tensor, int layer, size_t first, float *values, size_t n, Error *e) {
    Values *m = context;
    if (m->calls_left >= 0 && !m->calls_left--) return error_set(e, "the test's own failure");
    memcpy(values, values_at(m, tensor, layer) + first, n * sizeof *values);
    return true;
}

static void open_golden(Gguf *g, const char *name) {
    Error e = {""};
    char path[128];
    snprintf(path, sizeof path, "tests/golden/gguf/%s.gguf.zst", name);
    if (!gguf_open(g, path, &e)) fail_msg("%s", e.text);
}

static ModelConfig config_of(const Gguf *g) {
    Error e = {""};
    ModelConfig c;
    if (!gguf_config(g, &c, &e)) fail_msg("%s", e.text);
    return c;
}

static Values load(const Gguf *g) {
    Error e = {""};
    const ModelConfig c = config_of(g);
    Values m = new_values(&c);
    if (!gguf_load(g, &c, put, &m, &e)) fail_msg("%s", e.text);
    return m;
}

/* Compares all values. */
static void assert_values(const char *name, const Values *a, const Values *b, float tolerance) {
    assert_int_equal(a->count, b->count);
    for (int t = 0; t < TENSOR_COUNT; t++)
        for (size_t i = a->t[t].offset; i < a->t[t].offset + a->t[t].size; i++)
            if (!(fabsf(a->v[i] - b->v[i]) <= tolerance))
                fail_msg("%s: element %zu of %s is %g, expected %g", name, i - a->t[t].offset, a->t[t].name,
                         (double)a->v[i], (double)b->v[i]);
}

static void assert_config(const char *name, const ModelConfig *a, const ModelConfig *b) {
    assert_int_equal(a->family, b->family);
    assert_int_equal(a->context, b->context);
    assert_int_equal(a->rope.kind, b->rope.kind);
    if (memcmp(a, b, sizeof *a))
        for (size_t i = 0; i < sizeof *a; i++)
            if (((const uint8_t *)a)[i] != ((const uint8_t *)b)[i])
                fail_msg("%s: byte %zu of the configuration", name, i);
}

/* Half a step of Q8_0 for values up to 2, 2 / 127 / 2, and the rounding of the step to float16; weights are 0.0156
 * apart. */
static float tolerance_of(QuantType type) { return type == QUANT_Q8_0 ? 0.0079f : 0; }

static void must_save(const Values *m, const GgufOut *out, const char *path) {
    Error e = {""};
    if (!gguf_save(&m->config, out, path, get, (void *)(uintptr_t)m, &e)) fail_msg("%s", e.text);
}

/* ---- models ----------------------------------------------------------------------------------------------------- */

static void golden_models_are_read(void **state) {
    (void)state;
    for (int i = 0; i < MODELS; i++) {
        Gguf g;
        open_golden(&g, models[i]);
        const ModelConfig c = expected_config(models[i]), found = config_of(&g);
        assert_config(models[i], &found, &c);
        Values expected = expected_values(&c), got = load(&g);
        assert_values(models[i], &got, &expected,
                      tolerance_of(!strcmp(models[i], "llama-linear") ? QUANT_Q8_0 : QUANT_F16));
        free(expected.v), free(got.v);
        gguf_close(&g);
    }
}

/* Written in the type of the converter's file, the tensors have the same names, types and bytes, and the entries of the
 * architecture the same values. */
static void written_as_by_the_converter(void **state) {
    (void)state;
    for (int i = 0; i < MODELS; i++) {
        Gguf g, w;
        Error e = {""};
        if (!strcmp(models[i], "llama-fused")) continue; /* is written with q, k and v apart */
        open_golden(&g, models[i]);
        const ModelConfig c = config_of(&g);
        Values m = expected_values(&c);
        const GgufOut out = {.type = gguf_tensor(&g, "blk.0.attn_output.weight")->type, .carry = &g};
        must_save(&m, &out, files_path("out.gguf"));
        assert_true(gguf_open(&w, files_path("out.gguf"), &e));
        assert_int_equal(w.tensor_count, g.tensor_count);
        for (size_t t = 0; t < g.tensor_count; t++) {
            char name[GGUF_NAME_MAX + 1];
            snprintf(name, sizeof name, "%.*s", (int)g.tensors[t].name.length, g.tensors[t].name.text);
            const GgufTensor *a = &g.tensors[t], *b = gguf_tensor(&w, name);
            if (!b || a->type != b->type || a->dims != b->dims || a->bytes != b->bytes ||
                (memcmp(a->data, b->data, a->bytes) && strcmp(name, "rope_freqs.weight")))
                fail_msg("%s: tensor %s differs", models[i], name);
        }
        for (size_t k = 0; k < g.entry_count; k++) {
            char key[128];
            snprintf(key, sizeof key, "%.*s", (int)g.entries[k].key.length, g.entries[k].key.text);
            const GgufEntry *a = &g.entries[k], *b = gguf_find(&w, key);
            if (!b || a->kind != b->kind || a->value_bytes != b->value_bytes ||
                memcmp(a->value, b->value, a->value_bytes))
                fail_msg("%s: entry %s differs", models[i], key);
        }
        const ModelConfig again = config_of(&w);
        assert_config(models[i], &again, &c);
        gguf_close(&g), gguf_close(&w), free(m.v);
    }
}

static void every_type_is_written(void **state) {
    (void)state;
    const QuantType types[] = {QUANT_F32, QUANT_F16, QUANT_BF16, QUANT_Q8_0};
    for (int i = 0; i < MODELS; i++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
            Gguf g;
            Error e = {""};
            const ModelConfig c = expected_config(models[i]);
            Values m = expected_values(&c);
            must_save(&m, &(GgufOut){.type = types[t], .name = "tiny"}, files_path("out.gguf"));
            assert_true(gguf_open(&g, files_path("out.gguf"), &e));
            assert_true(g.mapped);
            Values got = load(&g);
            assert_config(models[i], &got.config, &c);
            assert_values(models[i], &got, &m, tolerance_of(types[t]));
            assert_int_equal(gguf_tensor(&g, "blk.0.attn_output.weight")->type,
                             model_q_width(&c) % 32 && types[t] == QUANT_Q8_0 ? QUANT_F16 : types[t]);
            assert_int_equal(gguf_tensor(&g, "output_norm.weight")->type, QUANT_F32);
            gguf_close(&g), free(m.v), free(got.v);
        }
}

/* Tensors that are larger than what is copied and decoded at a time. */
static void large_tensors(void **state) {
    (void)state;
    Gguf g;
    Error e = {""};
    ModelConfig c = expected_config("llama");
    c.vocab = 40001;
    c.padded_vocab = gpt2_padded_vocab(c.vocab);
    assert_true((size_t)c.vocab * 32 > MODEL_CHUNK);
    Values m = new_values(&c);
    for (size_t i = 0; i < m.count; i++) m.v[i] = weight("large", i);
    const size_t end = (size_t)c.vocab * 32, padding = (size_t)(c.padded_vocab - c.vocab) * 32;
    memset(values_at(&m, TENSOR_wte, 0) + end, 0, padding * sizeof *m.v);
    memset(values_at(&m, TENSOR_headw, 0) + end, 0, padding * sizeof *m.v);
    must_save(&m, &(GgufOut){.type = QUANT_F16}, files_path("out.gguf"));
    assert_true(gguf_open(&g, files_path("out.gguf"), &e));
    Values got = load(&g);
    assert_values("large", &got, &m, 0);
    gguf_close(&g), free(m.v), free(got.v);
}

/* A Mistral whose window is shorter than the context is written with the context in which both agree. */
static void window_without_a_place(void **state) {
    (void)state;
    Gguf g;
    Error e = {""};
    ModelConfig c = expected_config("mistral");
    c.family = FAMILY_MISTRAL;
    c.window = 9;
    c.layer[0] = c.layer[1] = LAYER_WINDOW;
    Values m = expected_values(&c);
    must_save(&m, &(GgufOut){.type = QUANT_F16}, files_path("out.gguf"));
    assert_true(gguf_open(&g, files_path("out.gguf"), &e));
    assert_int_equal(config_of(&g).context, 9);
    gguf_close(&g), free(m.v);
}

/* Windows that are not those of llama.cpp's period are an array of booleans. */
static void unusual_windows(void **state) {
    (void)state;
    Gguf g;
    Error e = {""};
    ModelConfig c = expected_config("gemma3");
    c.layer[1] = 0;
    Values m = expected_values(&c);
    must_save(&m, &(GgufOut){.type = QUANT_F16}, files_path("out.gguf"));
    assert_true(gguf_open(&g, files_path("out.gguf"), &e));
    const ModelConfig got = config_of(&g);
    assert_config("gemma3", &got, &c);
    gguf_close(&g), free(m.v);
}

/* Through the backend's memory. */
static void model_round_trip(void **state) {
    (void)state;
    Gguf g;
    Model m;
    Error e = {""};
    open_golden(&g, "llama");
    const ModelConfig c = config_of(&g);
    Values expected = expected_values(&c);
    assert_true(model_new(&m, &c, B, D, false, &e));
    assert_true(gguf_load(&g, &c, model_gguf_put, &(ModelGguf){.m = &m}, &e));
    assert_true(gguf_save(&c, &(GgufOut){.type = QUANT_F16}, files_path("out.gguf"), model_gguf_get, &m, &e));
    gguf_close(&g);
    assert_true(gguf_open(&g, files_path("out.gguf"), &e));
    Values got = load(&g);
    assert_values("llama", &got, &expected, 0);
    model_free(&m);
    gguf_close(&g), free(got.v), free(expected.v);
}

static void failures_of_the_caller(void **state) {
    (void)state;
    Gguf g;
    Error e = {""};
    open_golden(&g, "qwen3");
    const ModelConfig c = config_of(&g);
    Values m = new_values(&c), full = expected_values(&c);
    m.calls_left = 5;
    assert_false(gguf_load(&g, &c, put, &m, &e));
    files_assert_error(&e, "own failure");
    full.calls_left = 5;
    assert_false(gguf_save(&c, &(GgufOut){.type = QUANT_F16}, files_path("never.gguf"), get, &full, &e));
    assert_int_equal(access(files_path("never.gguf"), F_OK), -1);
    full.calls_left = -1;
    values_at(&full, TENSOR_fcw, 1)[7] = 70000;
    assert_false(gguf_save(&c, &(GgufOut){.type = QUANT_F16}, files_path("never.gguf"), get, &full, &e));
    files_assert_error(&e, "blk.1.ffn_gate.weight has the value 70000, which F16 cannot store");
    values_at(&full, TENSOR_fcw, 1)[7] = NAN;
    assert_false(gguf_save(&c, &(GgufOut){.type = QUANT_F32}, files_path("never.gguf"), get, &full, &e));
    files_assert_error(&e, "blk.1.ffn_gate.weight");
    assert_false(gguf_save(&c, &(GgufOut){.type = QUANT_Q4_K}, files_path("never.gguf"), get, &full, &e));
    files_assert_error(&e, "Q4_K");
    gguf_close(&g), free(m.v), free(full.v);
}

static void configurations_without_a_place(void **state) {
    (void)state;
    Error e = {""};
    ModelConfig c[12];
    const char *message[12];
    int n = 0;
#define CASE(model, change, text)                                                                                      \
    c[n] = expected_config(model);                                                                                     \
    c[n].change;                                                                                                       \
    message[n++] = text
    CASE("gemma2", score_scale = 0.5f, "scale of scores");
    CASE("gemma2", tied = 0, "output matrix");
    CASE("qwen2", rope.exact = 1, "yarn without rounding");
    CASE("smollm3", layer[0] = LAYER_NO_ROPE, "without rotary positions");
    CASE("qwen3", attproj_bias = 1, "biases");
    CASE("llama", rotary = 6, "rotated in part");
    CASE("llama", logit_cap = 3, "cap of logits");
    CASE("llama", value_head = 1, "value head");
    CASE("phi3", layer[1] = 0, "windows in some layers");
    CASE("olmo2", norm_place = NORM_PRE, "norms");
    CASE("qwen3", qk_norm = QK_NORM_ROW, "queries and keys");
    CASE("gemma3", local_rope.kind = ROPE_LINEAR, "layers with a window");
#undef CASE
    for (int i = 0; i < n; i++) {
        assert_false(gguf_save(&c[i], &(GgufOut){.type = QUANT_F16}, files_path("never.gguf"), get, NULL, &e));
        files_assert_error(&e, message[i]);
    }
}

/* ---- scaling of rotary positions in a tensor -------------------------------------------------------------------- */

static void scaling_is_recognised(void **state) {
    (void)state;
    const Rope known[] = {{.kind = ROPE_LLAMA3, .theta = 5e5f, .factor = 8, .low = 1, .high = 4, .original = 8192},
                          {.kind = ROPE_LLAMA3, .theta = 5e5f, .factor = 32, .low = 1, .high = 4, .original = 8192},
                          {.kind = ROPE_LLAMA3, .theta = 1e4f, .factor = 4, .low = 1, .high = 4, .original = 2048}};
    float factors[64];
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        Rope r = {.theta = known[i].theta};
        for (int j = 0; j < 64; j++) factors[j] = (float)gguf_llama3_factor(&known[i], 128, j);
        gguf_rope_of_factors(&r, 128, factors, 131072);
        assert_memory_equal(&r, &known[i], sizeof r);
    }
    Rope list = {.theta = 1e4f}, none = {.theta = 1e4f};
    factors[20] *= 1.001f;
    gguf_rope_of_factors(&list, 128, factors, 4096);
    assert_int_equal(list.kind, ROPE_LONGROPE);
    assert_int_equal(list.list_count, 64);
    assert_memory_equal(list.long_list, factors, sizeof factors);
    assert_memory_equal(list.short_list, factors, sizeof factors);
    assert_true(list.attention == 1);
    for (int j = 0; j < 64; j++) factors[j] = 1;
    gguf_rope_of_factors(&none, 128, factors, 4096);
    assert_int_equal(none.kind, ROPE_DEFAULT);
}

/* A list that is no known formula is written as it was read. */
static void list_round_trip(void **state) {
    (void)state;
    Gguf g;
    Error e = {""};
    ModelConfig c = expected_config("llama-linear");
    c.rope = (Rope){.kind = ROPE_LONGROPE, .theta = 1e4f, .factor = 1, .attention = 1, .original = 64, .list_count = 4};
    for (int j = 0; j < 4; j++) c.rope.short_list[j] = c.rope.long_list[j] = 1 + 0.3f * (float)j * (float)j;
    Values m = expected_values(&c);
    must_save(&m, &(GgufOut){.type = QUANT_F16}, files_path("out.gguf"));
    assert_true(gguf_open(&g, files_path("out.gguf"), &e));
    assert_non_null(gguf_tensor(&g, "rope_freqs.weight"));
    const ModelConfig got = config_of(&g);
    assert_config("list", &got, &c);
    gguf_close(&g), free(m.v);
}

/* yarn's factor of cosines is written as llama.cpp reads it: as a multiple of 0.1 ln(factor) + 1. */
static void yarn_round_trip(void **state) {
    (void)state;
    Gguf g;
    Error e = {""};
    ModelConfig c = expected_config("qwen2");
    c.rope.attention = 1.25f;
    c.rope.beta_fast = 16;
    Values m = expected_values(&c);
    double factor = 0;
    must_save(&m, &(GgufOut){.type = QUANT_F16}, files_path("out.gguf"));
    assert_true(gguf_open(&g, files_path("out.gguf"), &e));
    assert_true(gguf_get_number(&g, "qwen2.rope.scaling.attn_factor", 0, 9, &factor, &e));
    assert_true(fabs(factor * (0.1 * log(4) + 1) - 1.25) < 1e-6);
    const ModelConfig got = config_of(&g);
    assert_true(fabsf(got.rope.attention - 1.25f) < 1e-6f);
    assert_true(got.rope.beta_fast == 16);
    gguf_close(&g), free(m.v);
}

/* ---- the tokenizer ---------------------------------------------------------------------------------------------- */

static bool text_is(TextSlice t, const char *s) { return gguf_is(t, s); }

static void assert_tokenizer(const GgufTokenizer *t, size_t count) {
    assert_true(text_is(t->model, "gpt2") && text_is(t->pre, "smollm"));
    assert_int_equal(t->count, count);
    assert_true(text_is(t->tokens[0], "<unk>") && text_is(t->tokens[3], "a") &&
                text_is(t->tokens[23], "\xc4\xa0"
                                       "a"));
    assert_int_equal(t->types[0], GGUF_TOKEN_UNKNOWN);
    assert_int_equal(t->types[2], GGUF_TOKEN_CONTROL);
    assert_int_equal(t->types[22], GGUF_TOKEN_NORMAL);
    assert_int_equal(t->types[23], GGUF_TOKEN_USER_DEFINED);
    assert_int_equal(t->merge_count, 3);
    assert_true(text_is(t->merges[1], "ab c"));
    assert_null(t->scores);
    assert_int_equal(t->bos, 1);
    assert_int_equal(t->eos, 2);
    assert_int_equal(t->eot, -1);
    assert_int_equal(t->unknown, 0);
    assert_int_equal(t->padding, -1);
    assert_int_equal(t->add_bos, 1);
    assert_int_equal(t->add_eos, -1);
}

static void tokenizer_round_trip(void **state) {
    (void)state;
    Gguf g, w;
    GgufTokenizer t, again;
    TextSlice name = {"", 0}, template = {"", 0};
    Error e = {""};
    open_golden(&g, "qwen3");
    assert_true(gguf_tokenizer(&g, &t, &e));
    assert_tokenizer(&t, VOCAB);
    assert_true(text_is(t.chat_template, "{% for m in messages %}{{ m.content }}{% endfor %}"));

    ModelConfig c = config_of(&g);
    c.vocab = 26; /* two rows without a token */
    Values m = new_values(&c);
    for (size_t i = 0; i < m.count; i++) m.v[i] = 0.5f;
    t.chat_template = gguf_text("{{ messages }}");
    must_save(&m, &(GgufOut){.type = QUANT_F16, .name = "new", .tokenizer = &t, .carry = &g}, files_path("out.gguf"));
    assert_true(gguf_open(&w, files_path("out.gguf"), &e));
    assert_true(gguf_tokenizer(&w, &again, &e));
    assert_tokenizer(&again, 26);
    assert_true(text_is(again.tokens[25], "[PAD25]"));
    assert_int_equal(again.types[25], GGUF_TOKEN_UNUSED);
    assert_true(gguf_get_text(&w, "general.name", &name, &e) && text_is(name, "new"));
    assert_true(gguf_get_text(&w, "tokenizer.chat_template", &template, &e) && text_is(template, "{{ messages }}"));
    gguf_tokenizer_free(&again);
    gguf_close(&w);

    c.vocab = 23;
    assert_false(gguf_save(&c, &(GgufOut){.type = QUANT_F16, .tokenizer = &t}, files_path("never.gguf"), get, &m, &e));
    files_assert_error(&e, "24 tokens, the model 23");
    assert_false(gguf_save(&c, &(GgufOut){.type = QUANT_F16, .carry = &g}, files_path("never.gguf"), get, &m, &e));
    files_assert_error(&e, "qwen3.gguf.zst has 24 tokens, the model 23");
    gguf_tokenizer_free(&t);
    gguf_close(&g), free(m.v);
}

/* ---- files that are refused ------------------------------------------------------------------------------------- */

/* A copy of a golden file with one change: an entry is left out or added, or a tensor gets another name. */
typedef struct Change {
    const char *model, *without, *message;
    void (*add)(GgufWriter *w);
    const char *rename, *name;
} Change;

static void copy_with(const Change *change, const char *path) {
    Gguf g;
    GgufWriter w;
    Error e = {""};
    open_golden(&g, change->model);
    gguf_create(&w);
    for (size_t i = 0; i < g.entry_count; i++)
        if (!change->without || !gguf_is(g.entries[i].key, change->without)) gguf_put_entry(&w, &g.entries[i]);
    if (change->add) change->add(&w);
    for (size_t i = 0; i < g.tensor_count; i++) {
        const GgufTensor *t = &g.tensors[i];
        char name[GGUF_NAME_MAX + 1];
        snprintf(name, sizeof name, "%.*s", (int)t->name.length, t->name.text);
        gguf_plan(&w, change->rename && !strcmp(name, change->rename) ? change->name : name, t->type, t->dims, t->ne);
    }
    assert_true(gguf_begin(&w, path, &e));
    for (size_t i = 0; i < g.tensor_count; i++) {
        float *values = xmalloc(g.tensors[i].elements * sizeof *values);
        quant_decode(g.tensors[i].type, g.tensors[i].data, values, g.tensors[i].elements);
        assert_true(gguf_put_values(&w, values, g.tensors[i].elements, &e));
        free(values);
    }
    assert_true(gguf_commit(&w, &e));
    gguf_abort(&w);
    gguf_close(&g);
}

static void add_clip(GgufWriter *w) { gguf_put_text(w, "general.architecture", gguf_text("clip")); }
static void add_adapter(GgufWriter *w) { gguf_put_text(w, "general.type", gguf_text("adapter")); }
static void add_split(GgufWriter *w) { gguf_put_u32(w, "split.count", 3); }
static void add_experts(GgufWriter *w) { gguf_put_u32(w, "qwen3.expert_count", 8); }
static void add_unknown(GgufWriter *w) { gguf_put_f32(w, "qwen3.attention.scale", 2); }
static void add_dynamic(GgufWriter *w) { gguf_put_text(w, "qwen3.rope.scaling.type", gguf_text("dynamic")); }
static void add_longrope(GgufWriter *w) { gguf_put_text(w, "qwen3.rope.scaling.type", gguf_text("longrope")); }
static void add_factor(GgufWriter *w) { gguf_put_f32(w, "llama.rope.scaling.factor", 2); }
static void add_window(GgufWriter *w) { gguf_put_u32(w, "olmo2.attention.sliding_window", 4096); }
static void add_rope(GgufWriter *w) { gguf_put_f32(w, "gpt2.rope.freq_base", 1e4f); }
static void add_cap(GgufWriter *w) { gguf_put_f32(w, "qwen3.final_logit_softcapping", 3); }
static void add_heads(GgufWriter *w) { gguf_put_u32(w, "qwen3.attention.head_count", 8); }
static void add_layers(GgufWriter *w) { gguf_put_u32(w, "qwen3.block_count", 3); }
static void add_many_layers(GgufWriter *w) { gguf_put_u32(w, "qwen3.block_count", 4000000000u); }
static void add_text(GgufWriter *w) { gguf_put_text(w, "qwen3.block_count", gguf_text("2")); }
static void add_not_causal(GgufWriter *w) { gguf_put_flag(w, "qwen3.attention.causal", false); }
static void add_array(GgufWriter *w) {
    gguf_put_integers(w, "qwen3.feed_forward_length", (const int32_t[]){48, 40}, 2);
}
static void add_equal_array(GgufWriter *w) {
    gguf_put_integers(w, "qwen3.feed_forward_length", (const int32_t[]){48, 48}, 2);
}
static void add_nan(GgufWriter *w) { gguf_put_f32(w, "qwen3.attention.layer_norm_rms_epsilon", NAN); }

static void unsupported_models(void **state) {
    (void)state;
    static const Change changes[] = {
        {"qwen3", "general.architecture", "the architecture \"clip\" is not supported; known are llama", add_clip, 0,
         0},
        {"qwen3", "general.type", "general.type is \"adapter\"", add_adapter, 0, 0},
        {"qwen3", NULL, "llama-gguf-split", add_split, 0, 0},
        {"qwen3", NULL, "qwen3.expert_count is 8", add_experts, 0, 0},
        {"qwen3", NULL, "qwen3.attention.scale is not supported", add_unknown, 0, 0},
        {"qwen3", NULL, "rope.scaling.type is \"dynamic\"", add_dynamic, 0, 0},
        {"qwen3", NULL, "no tensors rope_factors", add_longrope, 0, 0},
        {"llama", NULL, "two scalings", add_factor, 0, 0},
        {"olmo2", NULL, "olmo2.attention.sliding_window is 4096", add_window, 0, 0},
        {"gpt2", NULL, "gpt2.rope.freq_base is not supported", add_rope, 0, 0},
        {"qwen3", NULL, "soft caps", add_cap, 0, 0},
        {"qwen3", NULL, "is not causal", add_not_causal, 0, 0},
        {"qwen3", "qwen3.context_length", "qwen3.context_length is missing", NULL, 0, 0},
        {"qwen3", "qwen3.attention.layer_norm_rms_epsilon", "rms_epsilon is missing", NULL, 0, 0},
        {"qwen3", "qwen3.attention.layer_norm_rms_epsilon", "rms_epsilon is", add_nan, 0, 0},
        {"qwen3", "qwen3.attention.head_count", "blk.0.attn_q.weight has the shape", add_heads, 0, 0},
        {"qwen3", "qwen3.block_count", "there is no tensor blk.2.attn_norm.weight", add_layers, 0, 0},
        {"qwen3", "qwen3.block_count", "qwen3.block_count is 4000000000", add_many_layers, 0, 0},
        {"qwen3", "qwen3.block_count", "of type text, expected an integer", add_text, 0, 0},
        {"qwen3", "qwen3.feed_forward_length", "differs between layers (48 and 40)", add_array, 0, 0},
        {"qwen3", NULL, "tensor blk.0.ffn_sub_norm.weight is not one", NULL, "blk.0.ffn_norm.weight",
         "blk.0.ffn_sub_norm.weight"},
        {"qwen3", NULL, "there is no tensor token_embd.weight", NULL, "token_embd.weight", "embd.weight"},
        {"phi3-longrope", NULL, "rope_factors_short.weight", NULL, "rope_factors_short.weight",
         "rope_factors_shrt.weight"}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        Gguf g;
        ModelConfig c;
        Error e = {""};
        copy_with(&changes[i], files_path("changed.gguf"));
        assert_true(gguf_open(&g, files_path("changed.gguf"), &e));
        assert_false(gguf_config(&g, &c, &e));
        files_assert_error(&e, changes[i].message);
        gguf_close(&g);
    }
    Gguf g;
    Error e = {""};
    copy_with(&(Change){"qwen3", "qwen3.feed_forward_length", "", add_equal_array, 0, 0}, files_path("changed.gguf"));
    assert_true(gguf_open(&g, files_path("changed.gguf"), &e));
    const ModelConfig c = expected_config("qwen3"), got = config_of(&g);
    assert_config("qwen3", &got, &c);
    gguf_close(&g);
}

static void add_twice(GgufWriter *w) { gguf_put_u32(w, "qwen3.block_count", 2); }
static void add_bad_alignment(GgufWriter *w) { gguf_put_u32(w, "general.alignment", 48); }

static void assert_refused(const uint8_t *data, size_t n, const char *message) {
    Gguf g;
    Error e = {""};
    assert_false(gguf_memory(&g, data, n, &e));
    files_assert_error(&e, message);
}

/* A small file: an entry of each type, a tensor of two rows and one of one. Returns its bytes. */
static uint8_t *small_file(size_t *n) {
    GgufWriter w;
    Error e = {""};
    const float values[6] = {1, 2, 3, 4, 5, 6};
    const TextSlice texts[2] = {gguf_text("x"), gguf_text("yz")};
    gguf_create(&w);
    gguf_put_u32(&w, "a", 7);
    gguf_put_f32(&w, "b", 0.5f);
    gguf_put_flag(&w, "c", true);
    gguf_put_text(&w, "d", gguf_text("text"));
    gguf_put_texts(&w, "e", texts, 2);
    gguf_put_integers(&w, "f", (const int32_t[]){-1, 5}, 2);
    gguf_put_numbers(&w, "g", values, 2);
    gguf_plan(&w, "first", QUANT_F32, 2, (const size_t[]){2, 2});
    gguf_plan(&w, "second", QUANT_F16, 1, (const size_t[]){2});
    assert_true(gguf_begin(&w, files_path("small.gguf"), &e) && gguf_put_values(&w, values, 6, &e) &&
                gguf_commit(&w, &e));
    gguf_abort(&w);
    return files_get(files_path("small.gguf"), n);
}

static void entries_and_tensors(void **state) {
    (void)state;
    Gguf g;
    Error e = {""};
    size_t n, count = 0;
    uint8_t *data = small_file(&n);
    int64_t integer = 0;
    double number = 0;
    bool flag = false;
    TextSlice text = {"", 0}, *texts = NULL;
    int32_t *integers = NULL;
    float *numbers = NULL, values[4];
    assert_true(gguf_memory(&g, data, n, &e));
    assert_true(gguf_get_integer(&g, "a", 0, 9, &integer, &e) && integer == 7);
    assert_true(gguf_get_number(&g, "b", 0, 1, &number, &e) && number == 0.5);
    assert_true(gguf_get_number(&g, "a", 0, 9, &number, &e) && number == 7);
    assert_true(gguf_get_flag(&g, "c", &flag, &e) && flag);
    assert_true(gguf_get_text(&g, "d", &text, &e) && text_is(text, "text"));
    assert_true(gguf_get_texts(&g, "e", &texts, &count, &e) && count == 2 && text_is(texts[1], "yz"));
    assert_true(gguf_get_integers(&g, "f", &integers, &count, &e) && count == 2 && integers[0] == -1);
    assert_true(gguf_get_numbers(&g, "g", &numbers, &count, &e) && count == 2 && numbers[1] == 2);
    assert_true(gguf_get_integer(&g, "none", 0, 9, &integer, &e) && integer == 7);
    assert_false(gguf_get_integer(&g, "a", 0, 6, &integer, &e));
    files_assert_error(&e, "entry a is 7, expected 0 to 6");
    assert_false(gguf_get_text(&g, "a", &text, &e));
    files_assert_error(&e, "entry a is of type uint32, expected a text");
    assert_false(gguf_get_flag(&g, "a", &flag, &e) || gguf_get_number(&g, "d", 0, 1, &number, &e) ||
                 gguf_get_integer(&g, "b", 0, 1, &integer, &e));
    const GgufTensor *t = gguf_tensor(&g, "first");
    assert_true(t && t->dims == 2 && t->ne[0] == 2 && t->ne[1] == 2 && t->bytes == 16);
    quant_decode(t->type, t->data, values, 4);
    assert_true(values[0] == 1 && values[3] == 4);
    assert_null(gguf_tensor(&g, "third"));
    free(texts), free(integers), free(numbers), free(data);
    gguf_close(&g);
}

/* Writes v over the bytes at `at`. */
static void poke(uint8_t *data, size_t at, uint64_t v, size_t bytes) { memcpy(data + at, &v, bytes); }

/* Place of the first occurrence of s. */
static size_t place(const uint8_t *data, size_t n, const char *s) {
    const uint8_t *p = memmem(data, n, s, strlen(s));
    assert_non_null(p);
    return (size_t)(p - data);
}

static void damaged_heads(void **state) {
    (void)state;
    size_t n;
    uint8_t *data = small_file(&n), *copy = xmalloc(n);
    const size_t first = place(data, n, "first") + 5, second = place(data, n, "second") + 6;
    const struct {
        size_t at;
        uint64_t value;
        size_t bytes;
        const char *message;
    } damage[] = {{0, 'X', 1, "does not begin with \"GGUF\""},
                  {4, 1, 4, "version 1"},
                  {4, 4, 4, "version 4"},
                  {4, 0x03000000, 4, "big-endian"},
                  {8, UINT64_MAX, 8, "tensors do not fit"},
                  {16, UINT64_MAX, 8, "entries do not fit"},
                  {24, UINT64_MAX, 8, "the key of an entry: needs 18446744073709551615 bytes"},
                  {24, 0, 8, "the key of an entry at byte 24 has 0 bytes"},
                  {32, '\n', 1, "control character 0x0a"},
                  {32, 'd', 1, "the key d occurs twice"},
                  {33, 13, 4, "entry a has values of type 13"},
                  {place(data, n, "text") - 8, UINT64_MAX, 8, "entry d: needs"},
                  {place(data, n, "e\t") + 5, 9, 4, "entry e is an array of arrays"},
                  {place(data, n, "e\t") + 9, UINT64_MAX / 2, 8, "entry e: 9223372036854775807 elements of type text"},
                  {place(data, n, "f\t") + 9, UINT64_MAX / 4, 8, "entry f: 4611686018427387903 elements of type int32"},
                  {first, 0, 4, "tensor first has 0 dimensions"},
                  {first, 5, 4, "tensor first has 5 dimensions"},
                  {first + 4, 0, 8, "tensor first: dimension 0 is 0"},
                  {first + 4, UINT64_MAX, 8, "tensor first: dimension 0 is 18446744073709551615"},
                  {first + 12, (uint64_t)1 << 62, 8, "tensor first: dimension 1"},
                  {first + 12, (uint64_t)1 << 40, 8, "tensor first: needs"},
                  {first + 20, 4, 4, "block type 4 (unknown)"},
                  {first + 20, 16, 4, "block type 16 (IQ2_XXS)"},
                  {first + 20, 8, 4, "rows of 2 elements are not whole blocks of 32 (Q8_0)"},
                  {first + 24, 4, 8, "its offset of 4 is not a multiple of 32"},
                  {first + 24, (uint64_t)1 << 63, 8, "tensor first: needs 16 bytes at offset"},
                  {second + 16, 0, 8, "overlap"},
                  {second - 14, 65, 8, "the name of a tensor"}};
    for (size_t i = 0; i < sizeof damage / sizeof *damage; i++) {
        memcpy(copy, data, n);
        poke(copy, damage[i].at, damage[i].value, damage[i].bytes);
        assert_refused(copy, n, damage[i].message);
    }
    memcpy(copy, data, n);
    memcpy(copy + place(data, n, "second"), "first\1", 5);
    poke(copy, second - 14, 5, 8); /* the rest of the name is read as the number of dimensions */
    assert_refused(copy, n, "tensor first");
    poke(data, 4, 2, 4);
    Gguf g;
    Error e;
    assert_true(gguf_memory(&g, data, n, &e)); /* version 2 is the same */
    gguf_close(&g);
    free(data), free(copy);
}

static void damaged_files(void **state) {
    (void)state;
    size_t n;
    uint8_t *data = small_file(&n);
    Gguf g;
    Error e = {""};
    for (size_t length = 0; length < n - 28; length++) { /* 28: padding after the last tensor */
        uint8_t *exact = xmalloc(length);
        memcpy(exact, data, length);
        assert_refused(exact, length, "memory: ");
        free(exact);
    }
    for (size_t at = 0; at < n; at++)
        for (int flip = 1; flip < 256; flip *= 2) {
            data[at] ^= (uint8_t)flip;
            if (gguf_memory(&g, data, n, &e)) gguf_close(&g);
            data[at] ^= (uint8_t)flip;
        }
    free(data);
    copy_with(&(Change){"qwen3", NULL, "", add_twice, 0, 0}, files_path("bad.gguf"));
    assert_false(gguf_open(&g, files_path("bad.gguf"), &e));
    files_assert_error(&e, "the key qwen3.block_count occurs twice");
    copy_with(&(Change){"qwen3", NULL, "", add_bad_alignment, 0, 0}, files_path("bad.gguf"));
    assert_false(gguf_open(&g, files_path("bad.gguf"), &e));
    files_assert_error(&e, "general.alignment is 48, expected a power of two");
    assert_false(gguf_open(&g, files_path("none.gguf"), &e));
    files_assert_error(&e, "none.gguf: cannot open");
    assert_false(gguf_open(&g, files_directory, &e));
    files_assert_error(&e, "is a directory");
    files_put(files_path("empty.gguf"), "", 0);
    assert_false(gguf_open(&g, files_path("empty.gguf"), &e));
    files_assert_error(&e, "magic number");
}

static void from_a_pipe(void **state) {
    (void)state;
    size_t n;
    Gguf g;
    Error e = {""};
    uint8_t *data = small_file(&n);
    files_feed_stdin(data, n, 100);
    assert_true(gguf_open(&g, "-", &e));
    files_restore(STDIN_FILENO);
    assert_int_equal(g.tensor_count, 2);
    gguf_close(&g);
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_models_are_read),
        cmocka_unit_test(written_as_by_the_converter),
        cmocka_unit_test(every_type_is_written),
        cmocka_unit_test(large_tensors),
        cmocka_unit_test(window_without_a_place),
        cmocka_unit_test(unusual_windows),
        cmocka_unit_test_setup_teardown(model_round_trip, open_device_one_thread, close_device),
        cmocka_unit_test(failures_of_the_caller),
        cmocka_unit_test(configurations_without_a_place),
        cmocka_unit_test(scaling_is_recognised),
        cmocka_unit_test(list_round_trip),
        cmocka_unit_test(yarn_round_trip),
        cmocka_unit_test(tokenizer_round_trip),
        cmocka_unit_test(unsupported_models),
        cmocka_unit_test(entries_and_tensors),
        cmocka_unit_test(damaged_heads),
        cmocka_unit_test(damaged_files),
        cmocka_unit_test(from_a_pipe)};
    return cmocka_run_group_tests(tests, files_setup, files_teardown);
}
