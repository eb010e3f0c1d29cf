/* test_huggingface.c - folders as Hugging Face has them: every family's folder that transformers wrote is read, and
 * written with the same bytes; configurations in both spellings; folders that are wrong; outputs that fail. */
#include "../llmc/base/error.h"           /* Error, xstrdup, xcalloc, xmalloc */
#include "../llmc/base/io.h"              /* file_slurp */
#include "../llmc/base/text.h"            /* TextBuffer, text_free, TokenList, text_string, ... */
#include "../llmc/cpu/cpu.h"              /* backend_cpu */
#include "../llmc/model/backend.h"        /* MLP_GEGLU, MLP_GELU, MLP_SWIGLU, NORM_LAYER, ... */
#include "../llmc/model/config.h"         /* ModelConfig, LAYER_WINDOW, FAMILY_GPT2, LAYER_NO_ROPE, ... */
#include "../llmc/model/model.h"          /* Model, model_free, model_upload, model_download, ... */
#include "../llmc/model/model.h"          /* Model, model_free, model_upload, model_download, ... */
#include "../llmc/model/model_file.h"     /* model_save, model_load */
#include "../llmc/model/model_file.h"     /* model_save, model_load */
#include "../llmc/model/model_folder.h"   /* model_save_folder */
#include "../llmc/model/model_load.h"     /* ModelFile, model_weights_hash, model_file_free */
#include "../llmc/model/optimizer.h"      /* Optimizer */
#include "../llmc/model/optimizer.h"      /* Optimizer */
#include "../llmc/model/tensors.h"        /* TENSOR_qkvw, TENSOR_fcw, TENSOR_headw, TENSOR_qkvb, ... */
#include "../llmc/text/tokenizer.h"       /* Tokenizer, tokenizer_free, tokenizer_load, tokenizer_store */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open */
#include "files.h"                        /* files_path, files_directory */
#include "models.h"                       /* models_device, refused, models_bytes, models_new, ... */

#include "../llmc/model/huggingface.h"              /* Huggingface, huggingface_close, huggingface_floats, ... */
#include "../llmc/model/huggingface_config.h"       /* huggingface_config_read */
#include "../llmc/model/huggingface_config_write.h" /* huggingface_config_change, huggingface_config_write */
#include "../llmc/model/huggingface_save.h"         /* HuggingfaceOutput, huggingface_save */
#include "../llmc/model/safetensors.h"              /* SAFETENSORS_F32, Safetensors, safetensors_close, ... */
#include <sys/resource.h>

#define FAMILIES "tests/golden/families/"

static const char *const folders[] = {"gpt2",  "gpt2-bare",  "llama-a",       "llama-b",   "mistral",
                                      "qwen2", "qwen2-yarn", "qwen3",         "qwen3-odd", "smollm3",
                                      "olmo2", "phi3",       "phi3-longrope", "gemma2",    "gemma3"};
enum { FOLDERS = sizeof folders / sizeof *folders };

/* ---- helpers ----------------------------------------------------------------------------------------------------- */

static char *golden_path(const char *name) {
    static char path[4][256];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], FAMILIES "%s", name);
    return p;
}

static void load(Model *m, ModelFile *f, const char *path, bool value_head) {
    Error e;
    if (!model_load(m, f, path, NULL, value_head, backend_cpu(), models_device, false, 1, NULL, &e))
        fail_msg("%s: %s", path, e.text);
}

static void save(const Model *m, const ModelFile *f, const char *path, bool bf16) {
    Error e;
    if (!model_save(m, f, path, bf16, NULL, NULL, &e)) fail_msg("%s: %s", path, e.text);
}

static void unload(Model *m, ModelFile *f) { model_free(m), model_file_free(f); }

static void put_text(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

static char *slurp(const char *folder, const char *name, size_t *n) {
    Error e;
    char *path = huggingface_path(folder, name), *text = file_slurp(path, 1 << 26, n, &e);
    if (!text) fail_msg("%s", e.text);
    free(path);
    return text;
}

static bool exists(const char *folder, const char *name) { return huggingface_has(folder, name); }

static void assert_same_file(const char *a, const char *b, const char *name) {
    size_t n, m;
    char *x = slurp(a, name, &n), *y = slurp(b, name, &m);
    if (n != m || memcmp(x, y, n)) fail_msg("%s differs in %s and %s", name, a, b);
    free(x), free(y);
}

/* Copies a folder of the golden files to $T/NAME and returns its path. */
static char *copy_folder(const char *from, const char *name) {
    char command[512];
    snprintf(command, sizeof command, "rm -rf %s/%s && cp -r %s %s/%s && rm -f %s/%s/expected*", files_directory, name,
             from, files_directory, name, files_directory, name);
    assert_int_equal(system(command), 0);
    return strdup(files_path(name));
}

/* All elements of a model. */
static float *weights_of(const Model *m) {
    float *w = (float *)xmalloc(m->parameters * sizeof *w);
    m->backend->weights_download(m->device, w, m->weights, m->parameters);
    return w;
}

/* The number of files and folders in $T whose names contain `part`. */
static int entries(const char *part) {
    int n = 0;
    DIR *d = opendir(files_directory);
    for (struct dirent *entry; (entry = readdir(d));) n += strstr(entry->d_name, part) != NULL;
    closedir(d);
    return n;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* Where a tensor of a file is in the model, by the last parts of its name: written again here from the published code,
 * for each name as its class in transformers uses it. */
static void place(const ModelConfig *c, const char *name, int *tensor, int *layer, size_t *row, bool *turned) {
    const bool gpt2 = c->family == FAMILY_GPT2;
    const bool sandwich = c->family == FAMILY_OLMO2 || c->family == FAMILY_GEMMA2 || c->family == FAMILY_GEMMA3;
    const size_t H = (size_t)c->heads, K = (size_t)c->kv_heads, D = (size_t)c->head_size;
    const struct {
        const char *part;
        int tensor;
        size_t row;
    } table[] = {{"wte.weight", TENSOR_wte, 0},
                 {"wpe.weight", TENSOR_wpe, 0},
                 {"ln_1.weight", TENSOR_ln1w, 0},
                 {"ln_1.bias", TENSOR_ln1b, 0},
                 {"ln_2.weight", TENSOR_ln2w, 0},
                 {"ln_2.bias", TENSOR_ln2b, 0},
                 {"c_attn.weight", TENSOR_qkvw, 0},
                 {"c_attn.bias", TENSOR_qkvb, 0},
                 {"attn.c_proj.weight", TENSOR_attprojw, 0},
                 {"attn.c_proj.bias", TENSOR_attprojb, 0},
                 {"c_fc.weight", TENSOR_fcw, 0},
                 {"c_fc.bias", TENSOR_fcb, 0},
                 {"mlp.c_proj.weight", TENSOR_fcprojw, 0},
                 {"mlp.c_proj.bias", TENSOR_fcprojb, 0},
                 {"ln_f.weight", TENSOR_lnfw, 0},
                 {"ln_f.bias", TENSOR_lnfb, 0},
                 {"embed_tokens.weight", TENSOR_wte, 0},
                 {"lm_head.weight", TENSOR_headw, 0},
                 {"q_proj.weight", TENSOR_qkvw, 0},
                 {"k_proj.weight", TENSOR_qkvw, H * D},
                 {"v_proj.weight", TENSOR_qkvw, H * D + K * D},
                 {"q_proj.bias", TENSOR_qkvb, 0},
                 {"k_proj.bias", TENSOR_qkvb, H * D},
                 {"v_proj.bias", TENSOR_qkvb, H * D + K * D},
                 {"qkv_proj.weight", TENSOR_qkvw, 0},
                 {"q_norm.weight", TENSOR_qnormw, 0},
                 {"k_norm.weight", TENSOR_knormw, 0},
                 {"o_proj.weight", TENSOR_attprojw, 0},
                 {"o_proj.bias", TENSOR_attprojb, 0},
                 {"gate_proj.weight", TENSOR_fcw, 0},
                 {"up_proj.weight", TENSOR_fcw, (size_t)c->hidden},
                 {"gate_up_proj.weight", TENSOR_fcw, 0},
                 {"gate_proj.bias", TENSOR_fcb, 0},
                 {"up_proj.bias", TENSOR_fcb, (size_t)c->hidden},
                 {"down_proj.weight", TENSOR_fcprojw, 0},
                 {"down_proj.bias", TENSOR_fcprojb, 0},
                 {"input_layernorm.weight", TENSOR_ln1w, 0},
                 {"post_attention_layernorm.weight", sandwich ? TENSOR_attpostw : TENSOR_ln2w, 0},
                 {"pre_feedforward_layernorm.weight", TENSOR_ln2w, 0},
                 {"post_feedforward_layernorm.weight", TENSOR_mlppostw, 0},
                 {"model.norm.weight", TENSOR_lnfw, 0}};
    const char *number = strstr(name, gpt2 ? "h." : "layers.");
    *layer = number ? atoi(number + (gpt2 ? 2 : 7)) : 0;
    *turned =
        gpt2 && strstr(name, "weight") && (strstr(name, "c_attn") || strstr(name, "c_proj") || strstr(name, "c_fc"));
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const size_t n = strlen(table[i].part), all = strlen(name);
        if (all < n || strcmp(name + all - n, table[i].part)) continue;
        if (all > n && name[all - n - 1] != '.') continue;
        *tensor = table[i].tensor;
        *row = table[i].row;
        return;
    }
    fail_msg("no place for %s", name);
}

/* Each tensor of each file equals its rows in the model, every element of the model comes from one tensor, and padding
 * rows are 0. */
static void tensors(void **state) {
    (void)state;
    for (int i = 0; i < FOLDERS; i++) {
        Model m;
        ModelFile f;
        Safetensors s;
        Error e;
        char path[300];
        load(&m, &f, golden_path(folders[i]), false);
        snprintf(path, sizeof path, FAMILIES "%s/model.safetensors", folders[i]);
        assert_true(safetensors_open(&s, path, &e));
        float *w = weights_of(&m);
        uint8_t *seen = (uint8_t *)xcalloc(m.parameters, 1);
        for (size_t k = 0; k < s.count; k++) {
            const SafeTensor *t = &s.tensor[k];
            int tensor = 0, layer = 0;
            size_t row = 0;
            bool turned = false;
            if (strstr(t->name, ".attn.bias")) continue; /* gpt2-bare: the causal mask */
            place(&m.config, t->name, &tensor, &layer, &row, &turned);
            const TensorInfo *info = &m.tensor[tensor];
            const size_t columns = t->dims == 1 ? 1 : info->columns;
            const size_t at = info->offset + (size_t)layer * info->rows * info->columns + row * columns;
            for (uint64_t x = 0; x < t->elements; x++) {
                float value;
                safetensors_floats(t, x, &value, 1);
                const size_t y = turned ? x % t->shape[1] * t->shape[0] + x / t->shape[1] : x;
                if (memcmp(&value, &w[at + y], 4)) fail_msg("%s: %s: element %d", folders[i], t->name, (int)x);
                assert_int_equal(seen[at + y]++, 0);
            }
        }
        for (size_t x = 0; x < m.parameters; x++) {
            if (seen[x]) continue;
            const size_t from_wte = x - m.tensor[TENSOR_wte].offset, from_head = x - m.tensor[TENSOR_headw].offset;
            const size_t used = (size_t)m.config.vocab * (size_t)m.config.width;
            const bool padding =
                (from_wte >= used && from_wte < m.tensor[TENSOR_wte].size) ||
                (x >= m.tensor[TENSOR_headw].offset && from_head >= used && from_head < m.tensor[TENSOR_headw].size);
            if (!padding || w[x] != 0) fail_msg("%s: element %zu comes from no tensor", folders[i], x);
        }
        free(w), free(seen), safetensors_close(&s), unload(&m, &f);
    }
}

/* A folder that is read and written has the same bytes. */
static void round_trip(void **state) {
    (void)state;
    for (int i = 0; i < FOLDERS; i++) {
        Model m, n;
        ModelFile f, g;
        const char *from = golden_path(folders[i]), *to = files_path("out/");
        load(&m, &f, from, false);
        save(&m, &f, to, false);
        assert_same_file(from, to, "config.json");
        assert_same_file(from, to, "generation_config.json");
        if (strcmp(folders[i], "gpt2-bare")) assert_same_file(from, to, "model.safetensors");
        assert_false(exists(to, "training_lineage.json"));
        assert_false(exists(to, "expected.safetensors"));
        load(&n, &g, to, false);
        float *a = weights_of(&m), *b = weights_of(&n);
        assert_int_equal(m.parameters, n.parameters);
        assert_memory_equal(a, b, m.parameters * sizeof *a);
        assert_int_equal(model_weights_hash(&m), model_weights_hash(&n));
        if (strcmp(folders[i], "gpt2-bare")) assert_true(f.hash == g.hash && f.hash);
        free(a), free(b), unload(&m, &f), unload(&n, &g);
    }
    assert_int_equal(entries(".tmp"), 0);
}

/* Parts of more elements than one thread reads at a time, as they are and turned, by three threads. */
static void threads(void **state) {
    (void)state;
    Model m = models_new(1, 128, 300), n;
    ModelFile f = {0}, g;
    save(&m, &f, files_path("large/"), false);
    omp_set_num_threads(3);
    load(&n, &g, files_path("large/"), false);
    omp_set_num_threads(1);
    float *a = weights_of(&m), *b = weights_of(&n);
    assert_int_equal(m.parameters, n.parameters);
    assert_memory_equal(a, b, m.parameters * sizeof *a);
    free(a), free(b), unload(&m, &f), unload(&n, &g);
}

/* The type asked for; only the key of the type changes in config.json. */
static void types(void **state) {
    (void)state;
    Model m, n;
    ModelFile f, g;
    Error e;
    load(&m, &f, golden_path("qwen3"), false);
    if (!model_save_folder(&m, &f, files_path("f32/"), SAFETENSORS_F32, &e)) fail_msg("%s", e.text);
    load(&n, &g, files_path("f32"), false);
    assert_int_equal(model_weights_hash(&m), model_weights_hash(&n));
    size_t size, before;
    char *text = slurp(files_path("f32"), "config.json", &size),
         *old = slurp(golden_path("qwen3"), "config.json", &before);
    char *now = strstr(text, "\"dtype\": \"float32\""), *then = strstr(old, "\"dtype\": \"bfloat16\"");
    assert_non_null(now);
    assert_int_equal(now - text, then - old);
    assert_memory_equal(text, old, (size_t)(now - text));
    assert_string_equal(now + strlen("\"dtype\": \"float32\""), then + strlen("\"dtype\": \"bfloat16\""));
    save(&n, &g, files_path("b16/"), true); /* back to bfloat16: the bytes of the start */
    assert_same_file(golden_path("qwen3"), files_path("b16"), "model.safetensors");
    assert_same_file(golden_path("qwen3"), files_path("b16"), "config.json");
    free(text), free(old), unload(&n, &g);
    if (!model_save_folder(&m, &f, files_path("f16/"), SAFETENSORS_F16, &e)) fail_msg("%s", e.text);
    load(&n, &g, files_path("f16"), false);
    float *a = weights_of(&m), *b = weights_of(&n);
    for (size_t i = 0; i < m.parameters; i++) assert_true(fabsf(a[i] - b[i]) <= fabsf(a[i]) * 0x1p-11f + 0x1p-25f);
    free(a), free(b), unload(&m, &f), unload(&n, &g);
}

/* ---- config.json ------------------------------------------------------------------------------------------------- */

static ModelConfig config_of(json_t *root) {
    ModelConfig c;
    Error e;
    if (!huggingface_config_read(&c, root, "config.json", &e)) fail_msg("%s", e.text);
    return c;
}

static json_t *config_json(const char *folder) {
    char path[300];
    snprintf(path, sizeof path, FAMILIES "%s/config.json", folder);
    json_t *root = json_load_file(path, 0, NULL);
    assert_non_null(root);
    return root;
}

static ModelConfig config_in(const char *folder) {
    json_t *root = config_json(folder);
    const ModelConfig c = config_of(root);
    json_decref(root);
    return c;
}

static void configurations(void **state) {
    (void)state;
    ModelConfig c = config_in("llama-a");
    assert_true(c.family == FAMILY_LLAMA && c.width == 32 && c.hidden == 40 && c.layers == 2 && c.heads == 4 &&
                c.kv_heads == 2 && c.head_size == 12 && c.context == 64 && c.vocab == 67 && c.padded_vocab == 128);
    assert_true(c.norm == NORM_RMS && c.norm_eps == 1e-5f && !c.norm_plus_one && c.norm_place == NORM_PRE);
    assert_true(c.qkv_bias && c.attproj_bias && c.mlp_bias && !c.tied && c.mlp == MLP_SWIGLU && !c.window);
    assert_true(c.position == POSITION_ROTARY && c.rotary == 12 && c.rope.kind == ROPE_LLAMA3 && c.rope.theta == 500 &&
                c.rope.factor == 8 && c.rope.low == 1 && c.rope.high == 4 && c.rope.original == 16);
    assert_true(!c.embed_scale && !c.score_scale && !c.score_cap && !c.logit_cap && !c.qk_norm && !c.local_rope.theta);
    c = config_in("llama-b");
    assert_true(c.tied && !c.qkv_bias && c.kv_heads == 4 && c.head_size == 8 && c.norm_eps == 1e-6f);
    assert_true(c.rope.kind == ROPE_LINEAR && c.rope.factor == 2.5f && c.rope.theta == 10000 && !c.rope.original);
    c = config_in("mistral");
    assert_true(c.family == FAMILY_MISTRAL && c.window == 9 && c.layer[0] == LAYER_WINDOW &&
                c.layer[1] == LAYER_WINDOW);
    c = config_in("qwen2");
    assert_true(c.qkv_bias && !c.attproj_bias && !c.mlp_bias && c.tied && c.rope.theta == 1e6f && !c.window &&
                !c.layer[1]);
    c = config_in("qwen3");
    assert_true(c.qk_norm == QK_NORM_HEAD && c.head_size == 12 && !c.qkv_bias);
    c = config_in("smollm3");
    assert_true(c.tied && !c.layer[0] && !c.layer[2] && c.layer[3] == LAYER_NO_ROPE && c.rope.theta == 5e6f);
    c = config_in("olmo2");
    assert_true(c.qk_norm == QK_NORM_ROW && c.norm_place == NORM_POST && !c.tied && c.norm_eps == 1e-5f);
    c = config_in("phi3");
    assert_true(c.rotary == 6 && c.head_size == 8 && c.window == 9 && c.layer[1] == LAYER_WINDOW &&
                c.rope.kind == ROPE_DEFAULT);
    c = config_in("phi3-longrope");
    assert_true(c.rope.kind == ROPE_LONGROPE && c.rope.original == 24 && c.rope.list_count == 4 &&
                c.rope.long_list[3] == 2.6f && c.rope.short_list[1] == 1.05f &&
                fabsf(c.rope.factor - 64.0f / 24) < 1e-6f && !c.window);
    c = config_in("gemma2");
    assert_true(c.norm_plus_one && c.norm_place == NORM_BOTH && c.mlp == MLP_GEGLU && c.score_cap == 3 &&
                c.logit_cap == 5 && c.window == 9 && c.layer[0] == LAYER_WINDOW && !c.layer[1] && c.tied);
    assert_true(fabsf(c.embed_scale - 5.656854f) < 1e-6f && fabsf(c.score_scale - 0.2236068f) < 1e-7f);
    c = config_in("gemma3");
    assert_true(c.qk_norm == QK_NORM_HEAD && !c.score_cap && !c.logit_cap && c.window == 9 && c.kv_heads == 1);
    for (int l = 0; l < 7; l++) assert_int_equal(c.layer[l], l == 5 ? 0 : LAYER_WINDOW);
    assert_true(c.rope.kind == ROPE_LINEAR && c.rope.theta == 1e6f && c.rope.factor == 8);
    assert_true(c.local_rope.kind == ROPE_DEFAULT && c.local_rope.theta == 1e4f);
    c = config_in("gpt2");
    assert_true(c.family == FAMILY_GPT2 && c.norm == NORM_LAYER && c.hidden == 128 && c.mlp == MLP_GELU && c.tied &&
                c.position == POSITION_LEARNED && !c.rotary && c.qkv_bias && c.attproj_bias && c.mlp_bias);
}

/* Reads the folder's configuration with these changes: members of an object; null removes a key. */
static json_t *changed(const char *folder, const char *changes) {
    json_t *root = config_json(folder), *change = json_loads(changes, 0, NULL), *value;
    const char *key;
    if (!change) fail_msg("not JSON: %s", changes);
    json_object_foreach(change, key, value) {
        if (json_is_string(value) && !strcmp(json_string_value(value), "-")) json_object_del(root, key);
        else json_object_set(root, key, value);
    }
    json_decref(change);
    return root;
}

static void assert_same_config(const ModelConfig *a, const ModelConfig *b, const char *what) {
    if (memcmp(a, b, sizeof *a)) fail_msg("%s: another configuration", what);
}

/* The spelling of transformers 4, the defaults of absent keys, and values that are the same. "-" removes a key. */
static void spellings(void **state) {
    (void)state;
    static const struct {
        const char *folder, *changes;
    } same[] = {
        {"llama-a", "{\"rope_parameters\":\"-\",\"rope_theta\":500,\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,"
                    "\"low_freq_factor\":1.0,\"high_freq_factor\":4,\"original_max_position_embeddings\":16}}"},
        {"llama-b",
         "{\"rope_parameters\":null,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2.5},\"head_dim\":null,"
         "\"num_key_value_heads\":\"-\",\"rms_norm_eps\":\"-\",\"attention_bias\":\"-\",\"mlp_bias\":\"-\"}"},
        {"llama-b",
         "{\"hidden_act\":\"swish\",\"torch_dtype\":\"float16\",\"_name_or_path\":\"x\",\"unsloth_version\":\"1\","
         "\"attention_dropout\":0.1,\"temperature\":0.6,\"quantization_config\":null,\"num_experts\":null}"},
        {"mistral", "{\"rope_parameters\":\"-\",\"rope_theta\":10000.0,\"layer_types\":[\"sliding_attention\","
                    "\"sliding_attention\"],\"tie_word_embeddings\":\"-\",\"architectures\":[\"MistralModel\"]}"},
        {"qwen2", "{\"rope_parameters\":\"-\",\"rope_theta\":1000000.0,\"rope_scaling\":null,\"layer_types\":\"-\","
                  "\"sliding_window\":32768,\"use_mrope\":false,\"head_dim\":8}"},
        {"smollm3",
         "{\"no_rope_layers\":\"-\",\"layer_types\":\"-\",\"tie_word_embeddings\":\"-\",\"use_sliding_window\":\"-\","
         "\"max_window_layers\":28}"},
        {"smollm3", "{\"no_rope_layers\":null,\"no_rope_layer_interval\":4}"},
        {"olmo2", "{\"rope_parameters\":\"-\",\"rope_theta\":500000,\"rms_norm_eps\":\"-\"}"},
        {"phi3", "{\"rope_parameters\":\"-\",\"partial_rotary_factor\":0.75,\"rope_scaling\":null}"},
        {"phi3-longrope",
         "{\"rope_parameters\":\"-\",\"rope_scaling\":{\"type\":\"su\",\"long_factor\":[1.1,1.6,2.3,2.6],"
         "\"short_factor\":[1.0,1.05,1.2,1.5]},\"auto_map\":{\"AutoConfig\":\"x\"}}"},
        {"gemma2",
         "{\"layer_types\":\"-\",\"hidden_activation\":\"-\",\"hidden_act\":\"gelu\",\"tie_word_embeddings\":\"-\","
         "\"cache_implementation\":\"hybrid\",\"use_bidirectional_attention\":false}"},
        {"gemma3",
         "{\"layer_types\":\"-\",\"rope_parameters\":\"-\",\"rope_theta\":1000000,\"rope_local_base_freq\":10000.0,"
         "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8}}"},
        {"gemma3", "{\"layer_types\":\"-\",\"_sliding_window_pattern\":\"-\",\"sliding_window_pattern\":6,"
                   "\"attn_logit_softcapping\":50.0}"},
        {"gpt2", "{\"n_inner\":128,\"n_ctx\":64,\"activation_function\":\"gelu_pytorch_tanh\",\"resid_pdrop\":0.1,"
                 "\"task_specific_params\":{\"a\":1},\"tie_word_embeddings\":\"-\",\"layer_norm_epsilon\":\"-\"}"}};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        const ModelConfig want = config_in(same[i].folder);
        json_t *root = changed(same[i].folder, same[i].changes);
        const ModelConfig got = config_of(root);
        assert_same_config(&got, &want, same[i].changes);
        json_decref(root);
    }
    static const char *const yarn[] = {
        "{\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4.0,\"rope_theta\":100.0,"
        "\"original_max_position_embeddings\":16}}",
        "{\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4.0,\"rope_theta\":100,\"truncate\":true,"
        "\"original_max_position_embeddings\":16,\"beta_fast\":32,\"beta_slow\":1.0,\"finetuned\":true}}",
        "{\"rope_parameters\":\"-\",\"rope_theta\":100,\"rope_scaling\":{\"type\":\"yarn\","
        "\"original_max_position_embeddings\":16}}"}; /* the factor follows from the context of 64 */
    for (int i = 0; i < 3; i++) {
        json_t *stretched = changed("qwen2", yarn[i]);
        const ModelConfig y = config_of(stretched);
        assert_true(y.rope.kind == ROPE_YARN && y.rope.factor == 4 && y.rope.original == 16 && y.rope.theta == 100 &&
                    y.rope.beta_fast == 32 && y.rope.beta_slow == 1 && !y.rope.attention && !y.rope.exact);
        json_decref(stretched);
    }
    json_t *root =
        changed("gemma2", "{\"attn_logit_softcapping\":null,\"final_logit_softcapping\":null,\"sliding_window\":null,"
                          "\"layer_types\":\"-\",\"query_pre_attn_scalar\":\"-\",\"head_dim\":\"-\"}");
    ModelConfig c = config_of(root);
    assert_true(!c.score_cap && !c.logit_cap && !c.window && !c.layer[0] && c.head_size == 256 &&
                c.score_scale == 0.0625f);
    json_decref(root);
    root = changed("gemma2",
                   "{\"attn_logit_softcapping\":\"-\",\"final_logit_softcapping\":\"-\",\"sliding_window\":\"-\"}");
    c = config_of(root);
    assert_true(c.score_cap == 50 && c.logit_cap == 30 && c.window == 4096);
    json_decref(root);
    root =
        changed("qwen3", "{\"head_dim\":\"-\",\"use_sliding_window\":true,\"sliding_window\":5,\"max_window_layers\":1,"
                         "\"layer_types\":\"-\",\"rope_parameters\":\"-\"}");
    c = config_of(root);
    assert_true(c.head_size == 128 && c.window == 5 && !c.layer[0] && c.layer[1] == LAYER_WINDOW &&
                c.rope.theta == 1e4f);
    json_decref(root);
    root =
        changed("qwen2", "{\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4,\"rope_theta\":100,\"mscale\":0.7,"
                         "\"mscale_all_dim\":0.5,\"truncate\":false,\"beta_fast\":16}}");
    c = config_of(root);
    assert_true(c.rope.exact && c.rope.beta_fast == 16 && c.rope.original == 64);
    assert_true(fabs(c.rope.attention - (0.07 * log(4) + 1) / (0.05 * log(4) + 1)) < 1e-6);
    json_decref(root);
    root = changed("smollm3", "{\"use_sliding_window\":true,\"sliding_window\":7,\"layer_types\":\"-\"}");
    c = config_of(root);
    assert_true(c.window == 7 && !c.layer[2] && c.layer[3] == (LAYER_WINDOW | LAYER_NO_ROPE));
    json_decref(root);
}

/* A configuration that is written and read again is the same. */
static void written_configurations(void **state) {
    (void)state;
    for (int i = 0; i < FOLDERS; i++) {
        const ModelConfig c = config_in(folders[i]);
        TextBuffer b = {0};
        int32_t ids[] = {2, 5};
        const TokenList stops = {ids, 2, 2};
        huggingface_config_write(&b, &c, "float32", &stops);
        json_t *root = json_loads(b.text, JSON_REJECT_DUPLICATES, NULL);
        if (!root) fail_msg("not JSON: %s", b.text);
        const ModelConfig again = config_of(root);
        assert_same_config(&again, &c, b.text);
        assert_int_equal(json_array_size(json_object_get(root, "eos_token_id")), 2);
        if (i == 2) assert_non_null(strstr(b.text, "\"rms_norm_eps\": 1e-05"));
        json_decref(root), text_free(&b);
    }
}

static void changed_text(void **state) {
    (void)state;
    static const struct {
        const char *before, *key, *value, *after;
    } text[] = {{"{\"a\": 1, \"b\": [1, {\"a\": 2}], \"c\": \"x\\\"}, \\\\\"}\n", "c", "7",
                 "{\"a\": 1, \"b\": [1, {\"a\": 2}], \"c\": 7}\n"},
                {"{\"a\": 1, \"b\": [1, {\"a\": 2}], \"c\": 2}", "b", "null", "{\"a\": 1, \"b\": null, \"c\": 2}"},
                {"{ \"b\" : {\"a\": 2} , \"a\" :\t-1.5e3}", "a", "[1]", "{ \"b\" : {\"a\": 2} , \"a\" :\t[1]}"},
                {"{\"b\": {\"a\": 2}}", "a", "1", "{\n  \"a\": 1,\"b\": {\"a\": 2}}"},
                {"{\n}", "a", "1", "{\n  \"a\": 1\n\n}"},
                {"{\"a\":true}", "a", "false", "{\"a\":false}"}};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        TextBuffer b = {0};
        text_string(&b, text[i].before);
        huggingface_config_change(&b, text[i].key, text[i].value);
        assert_string_equal(b.text, text[i].after);
        text_free(&b);
    }
}

static void config_refusals(void **state) {
    (void)state;
    static const struct {
        const char *folder, *changes, *part;
    } bad[] = {
        {"llama-a", "{\"model_type\":\"mixtral\"}",
         "model_type mixtral is not covered; covered are the plain decoders gpt2, llama"},
        {"llama-a", "{\"model_type\":\"gemma3\"}", "model_type gemma3 is not covered"},
        {"llama-a", "{\"model_type\":\"-\"}", "has no model_type"},
        {"llama-a", "{\"model_type\":5}", "has no model_type"},
        {"llama-a", "{\"num_experts\":4}", "key \"num_experts\" is not known"},
        {"llama-a", "{\"num_local_experts\":8}", "key \"num_local_experts\" is not known"},
        {"qwen3", "{\"moe_intermediate_size\":8}", "moe_intermediate_size"},
        {"llama-a", "{\"sliding_window\":8}", "key \"sliding_window\" is not known for model_type llama"},
        {"llama-a", "{\"attn_logit_softcapping\":30}", "attn_logit_softcapping"},
        {"llama-a", "{\"clip_qkv\":8}", "key \"clip_qkv\""},
        {"llama-a", "{\"quantization_config\":{\"bits\":4}}", "quantised weights are not covered"},
        {"llama-a", "{\"use_bidirectional_attention\":true}", "use_bidirectional_attention has a value other than 0"},
        {"llama-a", "{\"residual_multiplier\":0.2}", "residual_multiplier has a value other than 1"},
        {"llama-a", "{\"architectures\":[\"LlamaForTokenClassification\"]}",
         "LlamaForTokenClassification is not covered"},
        {"llama-a", "{\"architectures\":[\"MistralForCausalLM\"]}", "MistralForCausalLM is not covered"},
        {"llama-a", "{\"architectures\":[\"LlamaForSequenceClassification\"]}", "a classifier with 2 labels"},
        {"llama-a",
         "{\"architectures\":[\"LlamaForSequenceClassification\"],\"id2label\":{\"0\":\"a\",\"1\":\"b\",\"2\":\"c\"}}",
         "a classifier with 3 labels"},
        {"llama-a", "{\"hidden_size\":\"-\"}", "has no hidden_size"},
        {"llama-a", "{\"hidden_size\":\"32\"}", "hidden_size is not an integer"},
        {"llama-a", "{\"hidden_size\":32.5}", "hidden_size is not an integer"},
        {"llama-a", "{\"hidden_size\":99999999999}", "hidden_size is 99999999999"},
        {"llama-a", "{\"hidden_size\":-1}", "width is -1"},
        {"llama-a", "{\"num_hidden_layers\":100000}", "layers is 100000"},
        {"llama-a", "{\"vocab_size\":0}", "vocab_size is 0"},
        {"llama-a", "{\"vocab_size\":2147483647}", "vocab_size is 2147483647"},
        {"llama-a", "{\"num_attention_heads\":0}", "heads is 0"},
        {"llama-a", "{\"num_key_value_heads\":3}", "not a multiple of 3 key/value heads"},
        {"mistral", "{\"num_key_value_heads\":\"-\"}", "has no num_key_value_heads"},
        {"llama-a", "{\"head_dim\":11}", "11 rotated channels, expected an even number"},
        {"llama-a", "{\"rms_norm_eps\":0}", "rms_norm_eps is 0"},
        {"llama-a", "{\"rms_norm_eps\":1e-60}", "rms_norm_eps is 1e-60, expected a number from 1e-30"},
        {"llama-a", "{\"rms_norm_eps\":\"x\"}", "rms_norm_eps is not a number"},
        {"llama-a", "{\"attention_bias\":1}", "attention_bias is not true or false"},
        {"llama-a", "{\"hidden_act\":\"gelu\"}", "hidden_act is \"gelu\", expected silu"},
        {"gemma2", "{\"hidden_activation\":\"gelu\"}", "expected gelu_new or gelu_pytorch_tanh"},
        {"gpt2", "{\"activation_function\":\"relu\"}", "activation_function is \"relu\""},
        {"gpt2", "{\"scale_attn_by_inverse_layer_idx\":true}", "scale_attn_by_inverse_layer_idx"},
        {"gpt2", "{\"scale_attn_weights\":false}", "scale_attn_weights"},
        {"gpt2", "{\"n_head\":5}", "not a multiple of 5 heads"},
        {"llama-a", "{\"rope_parameters\":{\"rope_type\":\"dynamic\",\"factor\":2}}",
         "rope_type \"dynamic\" is not covered"},
        {"llama-a", "{\"rope_parameters\":{\"type\":\"mrope\"}}", "rope_type \"mrope\" is not covered"},
        {"llama-a", "{\"rope_parameters\":{\"rope_type\":\"linear\"}}", "has no factor"},
        {"llama-a", "{\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":-2}}", "factor is -2"},
        {"llama-a",
         "{\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,\"high_freq_factor\":1}}",
         "low_freq_factor is 4"},
        {"llama-a", "{\"rope_parameters\":{\"rope_type\":\"default\",\"mrope_section\":[1]}}", "key \"mrope_section\""},
        {"llama-a", "{\"rope_parameters\":7}", "not a JSON object"},
        {"llama-a", "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", "rope_parameters and rope_scaling differ"},
        {"llama-a", "{\"partial_rotary_factor\":0.5}", "partial_rotary_factor is 0.5, which is not covered for llama"},
        {"llama-a", "{\"original_max_position_embeddings\":32}", "is 32 at the top level and 16 with the rotary"},
        {"phi3", "{\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2}}",
         "rope_type linear is not covered for phi3"},
        {"phi3-longrope",
         "{\"rope_parameters\":{\"rope_type\":\"longrope\",\"short_factor\":[1,2,3],\"long_factor\":[1,2,3,4]}}",
         "short_factor is not a list of 4 numbers"},
        {"phi3-longrope",
         "{\"rope_parameters\":{\"rope_type\":\"longrope\",\"short_factor\":[1,2,3,0],\"long_factor\":[1,2,3,4]}}",
         "number 3 of short_factor"},
        {"qwen3", "{\"layer_types\":[\"full_attention\",\"linear_attention\"]}", "layer 1 is \"linear_attention\""},
        {"qwen3", "{\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
         "but the model has no sliding_window"},
        {"qwen3", "{\"layer_types\":[\"full_attention\"]}", "layer_types is not a list of 2"},
        {"mistral", "{\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
         "which model_type mistral does not apply"},
        {"mistral", "{\"sliding_window\":0}", "sliding_window is 0"},
        {"smollm3", "{\"no_rope_layers\":[1,1,2,0]}", "number 2 of no_rope_layers"},
        {"smollm3", "{\"no_rope_layers\":[1]}", "no_rope_layers is not a list of 4"},
        {"smollm3", "{\"no_rope_layers\":null,\"no_rope_layer_interval\":0}", "no_rope_layer_interval is 0"},
        {"gemma3", "{\"layer_types\":\"-\",\"sliding_window_pattern\":0}", "sliding_window_pattern is 0"},
        {"gemma3", "{\"rope_parameters\":{\"rope_type\":\"default\"}}", "is not an object for full_attention"},
        {"gemma3", "{\"use_bidirectional_attention\":true}", "use_bidirectional_attention"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *root = changed(bad[i].folder, bad[i].changes);
        ModelConfig c;
        Error e = {""};
        if (huggingface_config_read(&c, root, "config.json", &e)) fail_msg("%s is read", bad[i].changes);
        if (!strstr(e.text, bad[i].part)) fail_msg("%s: %s", bad[i].changes, e.text);
        json_decref(root);
    }
}

/* ---- folders that are wrong -------------------------------------------------------------------------------------- */

static void refuse_folder(const char *path, const char *part) {
    Model m;
    ModelFile f;
    Error e = {""};
    if (model_load(&m, &f, path, NULL, false, backend_cpu(), models_device, false, 1, NULL, &e))
        fail_msg("%s is read", part);
    if (!strstr(e.text, part)) fail_msg("expected %s: %s", part, e.text);
    assert_null(strchr(e.text, '\n'));
}

/* Files that may be missing, but not there and unreadable: a cache of models has links to files that may be gone. */
static void unreadable_files(void **state) {
    (void)state;
    static const char *const name[] = {"generation_config.json", "tokenizer_config.json", "tokenizer.json",
                                       "chat_template.jinja",    "tokenizer.llmc",        "training_lineage.json",
                                       "reward_model.json",      "config.json",           "model.safetensors"};
    Model m;
    ModelFile f;
    char path[4096], *d = copy_folder(golden_path("llama-a"), "unreadable");
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        const char *kept = i < 7 ? NULL : files_path("kept");
        snprintf(path, sizeof path, "%s/%s", d, name[i]);
        if (kept) assert_false(rename(path, kept));
        else remove(path);
        assert_false(symlink("../../blobs/0123", path));
        refuse_folder(d, "cannot open: No such file or directory");
        refuse_folder(d, name[i]);
        remove(path);
        assert_false(symlink(name[i], path));
        refuse_folder(d, "cannot open: Too many levels of symbolic links");
        remove(path);
        assert_false(mkdir(path, 0700));
        refuse_folder(d, "is not a regular file");
        remove(path);
        if (kept) assert_false(rename(kept, path));
    }
    snprintf(path, sizeof path, "%s/tokenizer.json", d);
    put_text(path, "version https://git-lfs.github.com/spec/v1\n");
    refuse_folder(d, "unreadable/tokenizer.json: is not JSON, but a pointer of Git LFS");
    remove(path);
    snprintf(path, sizeof path, "%s/LICENSES", d);
    assert_false(mkdir(path, 0700)); /* a folder that matches LICENSE* */
    load(&m, &f, d, false);
    unload(&m, &f);
    free(d);
}

/* Writes the tensors of a safetensors file to another without `drop` and with one more; NULL: none. */
static void rewrite(const char *from, const char *to, const char *drop, const char *extra, SafetensorsType type,
                    int dims, const uint64_t *shape, const float *data) {
    Safetensors s;
    SafetensorsWriter w = {0};
    Error e;
    if (!safetensors_open(&s, from, &e)) fail_msg("%s", e.text);
    for (size_t i = 0; i < s.count; i++)
        if (!drop || strcmp(s.tensor[i].name, drop))
            safetensors_add(&w, s.tensor[i].name, s.tensor[i].type, s.tensor[i].dims, s.tensor[i].shape);
    if (extra) safetensors_add(&w, extra, type, dims, shape);
    if (!safetensors_begin(&w, to, s.metadata, &e)) fail_msg("%s", e.text);
    for (size_t i = 0; i < w.count; i++) {
        const SafeTensor *t = extra && !strcmp(w.tensor[i].name, extra) ? NULL : safetensors_find(&s, w.tensor[i].name);
        void *zero = xcalloc(1, w.tensor[i].end - w.tensor[i].begin);
        const void *from_data = t ? (const void *)t->data : data ? (const void *)data : zero;
        assert_true(safetensors_put(&w, from_data, w.tensor[i].end - w.tensor[i].begin, &e));
        free(zero);
    }
    if (!safetensors_commit(&w, &e)) fail_msg("%s", e.text);
    safetensors_close(&s);
}

static void folder_refusals(void **state) {
    (void)state;
    char *d = copy_folder(golden_path("qwen2"), "bad"), to[300], command[800];
    const char *const from = FAMILIES "qwen2/model.safetensors";
    const uint64_t matrix[] = {67, 32}, vector[] = {32}, other[] = {33};
    snprintf(to, sizeof to, "%s/model.safetensors", d);
    rewrite(from, to, "model.norm.weight", NULL, 0, 0, NULL, NULL);
    refuse_folder(d, "tensor model.norm.weight is missing");
    rewrite(from, to, "model.layers.1.self_attn.k_proj.bias", NULL, 0, 0, NULL, NULL);
    refuse_folder(d, "tensor model.layers.1.self_attn.k_proj.bias is missing");
    rewrite(from, to, "model.embed_tokens.weight", NULL, 0, 0, NULL, NULL);
    refuse_folder(d, "has no tensor model.embed_tokens.weight");
    rewrite(from, to, NULL, "model.layers.2.mlp.up_proj.weight", SAFETENSORS_F32, 1, vector, NULL);
    refuse_folder(d, "tensor model.layers.2.mlp.up_proj.weight is not part of a qwen2 model");
    rewrite(from, to, NULL, "model.layers.0.self_attn.q_norm.weight", SAFETENSORS_F32, 1, vector, NULL);
    refuse_folder(d, "q_norm.weight is not part of a qwen2 model");
    rewrite(from, to, "model.norm.weight", "model.norm.weight", SAFETENSORS_F32, 1, other, NULL);
    refuse_folder(d, "tensor model.norm.weight has the shape (33), config.json needs (32)");
    rewrite(from, to, "model.embed_tokens.weight", "model.embed_tokens.weight", SAFETENSORS_F32, 1, vector, NULL);
    refuse_folder(d, "has the shape (32), config.json needs (67, 32)");
    rewrite(from, to, "model.norm.weight", "model.norm.weight", SAFETENSORS_I32, 1, vector, NULL);
    refuse_folder(d, "tensor model.norm.weight is I32, covered are F32");
    rewrite(from, to, NULL, "lm_head.weight", SAFETENSORS_BF16, 2, matrix, NULL);
    refuse_folder(d, "lm_head.weight differs from the embeddings, but tie_word_embeddings is true");
    Safetensors s; /* the same head is accepted, and not written */
    Error e;
    Model m;
    ModelFile f;
    assert_true(safetensors_open(&s, from, &e));
    rewrite(from, to, NULL, "lm_head.weight", SAFETENSORS_BF16, 2, matrix,
            (const float *)(const void *)safetensors_find(&s, "model.embed_tokens.weight")->data);
    safetensors_close(&s);
    load(&m, &f, d, false);
    save(&m, &f, files_path("tied/"), false);
    assert_same_file(FAMILIES "qwen2", files_path("tied"), "model.safetensors");
    unload(&m, &f);
    rewrite(from, to, NULL, "model.layers.0.self_attn.rotary_emb.inv_freq", SAFETENSORS_F32, 1, vector, NULL);
    load(&m, &f, d, false); /* a buffer of old files */
    unload(&m, &f);
    put_text(to, "12345678{}");
    refuse_folder(d, "not a safetensors file");
    put_text(to, "version https://git-lfs.github.com/spec/v1\n");
    refuse_folder(d, "not a safetensors file, but a pointer of Git LFS");
    remove(to);
    assert_false(mkfifo(to, 0600)); /* reading it would wait for ever */
    refuse_folder(d, "bad/model.safetensors: is not a regular file");
    remove(to);
    refuse_folder(d, "has neither model.safetensors nor");
    snprintf(command, sizeof command, "%s/pytorch_model.bin", d);
    put_text(command, "x");
    refuse_folder(d, "a pickle that could run any program");
    snprintf(to, sizeof to, "%s/config.json", d);
    put_text(to, "{\"a\":1,}");
    refuse_folder(d, "bad/config.json: line 1, column 8");
    put_text(to, "{\"model_type\":\"llama\",\"model_type\":\"llama\"}");
    refuse_folder(d, "duplicate");
    put_text(to, "[]");
    refuse_folder(d, "is not a JSON object");
    put_text(to, "version https://git-lfs.github.com/spec/v1\n");
    refuse_folder(d, "bad/config.json: is not JSON, but a pointer of Git LFS");
    remove(to);
    assert_false(mkfifo(to, 0600));
    refuse_folder(d, "bad/config.json: is not a regular file");
    remove(to);
    refuse_folder(d, "is a folder without config.json");
    free(d);
    d = copy_folder(golden_path("llama-a"), "untied");
    snprintf(to, sizeof to, "%s/model.safetensors", d);
    rewrite(FAMILIES "llama-a/model.safetensors", to, "lm_head.weight", NULL, 0, 0, NULL, NULL);
    refuse_folder(d, "tensor lm_head.weight is missing");
    free(d);
    d = copy_folder(golden_path("gemma2"), "eos");
    snprintf(to, sizeof to, "%s/generation_config.json", d);
    put_text(to, "{\"eos_token_id\":[1,67]}");
    refuse_folder(d, "eos_token_id is not a token below 67");
    put_text(to, "{\"eos_token_id\":");
    refuse_folder(d, "generation_config.json: line 1");
    free(d);
}

/* ---- several files ----------------------------------------------------------------------------------------------- */

static void shards(void **state) {
    (void)state;
    Model m, n;
    ModelFile f, g;
    Error e;
    load(&m, &f, golden_path("llama-a"), false);
    const HuggingfaceOutput out = {
        .source = f.source, .type = SAFETENSORS_TYPE_COUNT, .stops = f.stops, .one_file = 1000, .shard = 14000};
    if (!huggingface_save(&m, &out, files_path("many/"), &e)) fail_msg("%s", e.text);
    const char *d = strdup(files_path("many"));
    assert_false(exists(d, "model.safetensors"));
    assert_true(exists(d, "model-00001-of-00004.safetensors") && exists(d, "model-00004-of-00004.safetensors"));
    size_t size;
    char *index = slurp(d, "model.safetensors.index.json", &size);
    json_t *root = json_loads(index, 0, NULL);
    Safetensors s;
    assert_true(safetensors_open(&s, FAMILIES "llama-a/model.safetensors", &e));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "metadata"), "total_size")),
                     s.data_bytes);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "metadata"), "total_parameters")),
                     s.data_bytes / 2);
    assert_int_equal(json_object_size(json_object_get(root, "weight_map")), s.count);
    safetensors_close(&s);
    load(&n, &g, d, false);
    assert_int_equal(model_weights_hash(&m), model_weights_hash(&n));
    save(&n, &g, files_path("again/"), false); /* keeps the input's division, although one file would do */
    assert_same_file(d, files_path("again"), "model.safetensors.index.json");
    for (int i = 1; i <= 4; i++) {
        char name[64];
        snprintf(name, sizeof name, "model-%05d-of-00004.safetensors", i);
        assert_same_file(d, files_path("again"), name);
    }
    unload(&m, &f), unload(&n, &g);

    char path[300];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", d);
    json_t *map = json_object_get(root, "weight_map");
    const struct {
        const char *name, *file, *part;
    } bad[] = {
        {"model.norm.weight", "../many/model-00001-of-00004.safetensors", "is not the name of a safetensors file"},
        {"model.norm.weight", "..", "is not the name of a safetensors file"},
        {"model.norm.weight", "config.json", "is not the name of a safetensors file"},
        {"model.norm.weight", "absent.safetensors", "cannot open"},
        {"model.norm.weight", "model-00001-of-00004.safetensors", "the index has it in model-00001"},
        {"unknown", "model-00001-of-00004.safetensors", "names 24 tensors, the files have 23"},
        {"lm_head.weight", NULL, "the index has it nowhere"}};
    const size_t count = json_object_size(map);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *all = json_deep_copy(root), *here = json_object_get(all, "weight_map");
        if (bad[i].file) json_object_set_new(here, bad[i].name, json_string(bad[i].file));
        else json_object_del(here, bad[i].name);
        assert_int_equal(json_dump_file(all, path, 0), 0);
        char part[200];
        snprintf(part, sizeof part, "%s", bad[i].part);
        if (i == 5) snprintf(part, sizeof part, "names %zu tensors, the files have %zu", count + 1, count);
        refuse_folder(d, part);
        json_decref(all);
    }
    put_text(path, "{\"weight_map\":{}}");
    refuse_folder(d, "has no tensor model.embed_tokens.weight");
    put_text(path, "{}");
    refuse_folder(d, "has no weight_map");
    put_text(path, "{\"weight_map\":{\"a\":1}}");
    refuse_folder(d, "a is not in a file");
    json_decref(root), free(index), free((char *)d);
}

/* ---- other files ------------------------------------------------------------------------------------------------- */

/* The template of a folder, after the comment with its special tokens (text/jinja_chat.h). */
static void assert_template(const char *spec, const char *text) {
    assert_true(!strncmp(spec, "{#llmc {", 8));
    const char *end = strstr(spec, "}#}\n");
    assert_non_null(end);
    assert_string_equal(end + 4, text);
}

static void copied(void **state) {
    (void)state;
    Model m;
    ModelFile f;
    Error e;
    char *d = copy_folder(golden_path("llama-a"), "in"), path[300];
    static const char *const files[][2] = {{"tokenizer_config.json", "{\"chat_template\":\"{{ a }}\",  \"x\":1}"},
                                           {"special_tokens_map.json", "{ }"},
                                           {"tokenizer.model", "\1\2binary"},
                                           {"chat_template.jinja", "{% for m in messages %}{{ m }}{% endfor %}"},
                                           {"LICENSE", "terms"},
                                           {"license.txt", "more terms"},
                                           {"Notice", "notice"},
                                           {"README.md", "# about"},
                                           {"training.log", "x"},
                                           {"._a.tiktoken", "x"}, /* of macOS */
                                           {"additional_chat_templates/._rag.jinja", "x"},
                                           {"additional_chat_templates/rag.jinja", "{{ rag }}"},
                                           {"additional_chat_templates/RAG2.JINJA", "{{ rag2 }}"}};
    snprintf(path, sizeof path, "%s/additional_chat_templates", d);
    assert_int_equal(mkdir(path, 0777), 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", d, files[i][0]);
        put_text(path, files[i][1]);
    }
    load(&m, &f, d, false);
    assert_template(f.chat_template, files[3][1]);
    assert_non_null(
        strstr(f.note, "chat_template.jinja: differs from chat_template in tokenizer_config.json and is used instead"));
    assert_true(f.stops.count == 2 && f.stops.ids[0] == 2 && f.stops.ids[1] == 5);
    assert_null(f.tokenizer);
    char command[300];
    snprintf(command, sizeof command, "rm -r %s", d);
    char *kept = copy_folder(d, "kept-in");
    assert_int_equal(system(command), 0); /* the input is gone when the output is written */
    const char *to = files_path("copy/");
    save(&m, &f, to, false);
    for (int i = 0; i < 7; i++) assert_same_file(kept, to, files[i][0]);
    assert_same_file(kept, to, "additional_chat_templates/rag.jinja");
    assert_same_file(kept, to, "additional_chat_templates/RAG2.JINJA");
    assert_same_file(kept, to, "generation_config.json");
    assert_false(exists(to, "README.md") || exists(to, "training.log") || exists(to, "chat_template.llmc"));
    assert_false(exists(to, "._a.tiktoken") || exists(to, "additional_chat_templates/._rag.jinja"));
    /* another template, a further end, and a lineage */
    free(f.chat_template);
    f.chat_template = xstrdup("{{ messages }}");
    token_list_append(&f.stops, 9);
    json_array_append_new(f.lineage, json_pack("{s:s}", "stage", "sft"));
    save(&m, &f, to, false);
    size_t n;
    char *text = slurp(to, "chat_template.jinja", &n);
    assert_string_equal(text, "{{ messages }}");
    free(text);
    text = slurp(to, "generation_config.json", &n);
    assert_non_null(strstr(text, "\"eos_token_id\": [2,5,9],\n  \"output_attentions\": false"));
    free(text), unload(&m, &f);
    load(&m, &f, to, false);
    assert_template(f.chat_template, "{{ messages }}");
    assert_int_equal(f.stops.count, 3);
    assert_string_equal(json_string_value(json_object_get(json_array_get(f.lineage, 0), "stage")), "sft");
    unload(&m, &f);
    /* a template of this project's own syntax is kept in a file of its own */
    load(&m, &f, kept, false);
    free(f.chat_template);
    f.chat_template = xstrdup("{user}Q: {content}\n");
    f.tokenizer = NULL;
    assert_true(tokenizer_store(&models_bytes, &f.tokenizer, &f.tokenizer_bytes, &e));
    save(&m, &f, to, false);
    assert_same_file(kept, to, "chat_template.jinja");
    unload(&m, &f);
    load(&m, &f, to, false);
    assert_string_equal(f.chat_template, "{user}Q: {content}\n");
    Tokenizer t;
    assert_true(tokenizer_load(&t, f.tokenizer, f.tokenizer_bytes, &e));
    assert_int_equal(t.vocab, models_bytes.vocab);
    tokenizer_free(&t), unload(&m, &f), free(d), free(kept);
}

/* tokenizer.json is read, and copied; one that does not fit is refused. */
static void tokenizers(void **state) {
    (void)state;
    Model m;
    ModelFile f;
    Error e;
    ModelConfig c = config_in("llama-b");
    char *d = copy_folder(golden_path("llama-b"), "tok"), path[300], command[600];
    snprintf(command, sizeof command, "cp tests/golden/tokenizer_small.json %s/tokenizer.json", d);
    assert_int_equal(system(command), 0);
    Tokenizer t;
    assert_true(tokenizer_open(&t, "tests/golden/tokenizer_small.json", &e));
    snprintf(path, sizeof path, "a tokenizer of %d tokens does not fit the model's vocabulary of 67", t.vocab);
    refuse_folder(d, path);
    c.vocab = t.vocab; /* a model of that vocabulary */
    c.padded_vocab = gpt2_padded_vocab(c.vocab);
    assert_true(model_new(&m, &c, backend_cpu(), models_device, false, &e));
    model_init(&m, 3);
    f = (ModelFile){.lineage = json_array()};
    save(&m, &f, files_path("new/"), false);
    unload(&m, &f);
    snprintf(command, sizeof command, "cp tests/golden/tokenizer_small.json %s/tokenizer.json", files_path("new"));
    assert_int_equal(system(command), 0);
    load(&m, &f, files_path("new"), false);
    assert_non_null(f.tokenizer);
    assert_same_config(&m.config, &c, "new model");
    save(&m, &f, files_path("new2/"), false);
    assert_same_file(files_path("new"), files_path("new2"), "tokenizer.json");
    assert_same_file(files_path("new"), files_path("new2"), "config.json");
    assert_same_file(files_path("new"), files_path("new2"), "model.safetensors");
    assert_false(exists(files_path("new2"), "tokenizer.llmc"));
    tokenizer_free(&t), unload(&m, &f), free(d);
}

/* ---- reward models and other files ------------------------------------------------------------------------------- */

static void value_heads(void **state) {
    (void)state;
    for (int i = 0; i < FOLDERS; i++) {
        Model m, n;
        ModelFile f, g;
        load(&m, &f, golden_path(folders[i]), true);
        assert_false(f.head);
        const float bias = -0.625f;
        model_upload(&m, m.tensor[TENSOR_valueb].offset, &bias, 1);
        f.reward = xstrdup("{\"kind\":\"reward\",\"mean\":0.25}");
        save(&m, &f, files_path("rm/"), false);
        size_t size;
        char *text = slurp(files_path("rm"), "config.json", &size);
        assert_non_null(strstr(text, "ForSequenceClassification"));
        assert_non_null(strstr(text, "\"num_labels\": 1"));
        free(text);
        load(&n, &g, files_path("rm"), true);
        assert_true(g.head);
        assert_string_equal(g.reward, f.reward);
        float *a = weights_of(&m), *b = weights_of(&n);
        const size_t last = m.tensor[TENSOR_valuew].offset; /* the head is stored as bfloat16 */
        assert_memory_equal(a, b, last * sizeof *a);
        for (size_t x = last; x < m.parameters; x++) assert_true(fabsf(a[x] - b[x]) <= fabsf(a[x]) * 0x1p-8f);
        assert_true(b[m.tensor[TENSOR_valueb].offset] == bias);
        unload(&n, &g);
        load(&n, &g, files_path("rm"), false); /* without its head it is the model again */
        save(&n, &g, files_path("lm/"), false);
        if (strcmp(folders[i], "gpt2-bare"))
            assert_same_file(golden_path(folders[i]), files_path("lm"), "model.safetensors");
        free(a), free(b), unload(&m, &f), unload(&n, &g);
    }
}

/* A classifier as transformers writes it: without lm_head.weight, although its embeddings are not tied. */
static void classifiers(void **state) {
    (void)state;
    Model m;
    ModelFile f;
    char *d = copy_folder(golden_path("llama-a"), "cls"), path[300];
    const uint64_t shape[] = {1, 32};
    float w[32];
    for (int i = 0; i < 32; i++) w[i] = (float)i;
    snprintf(path, sizeof path, "%s/model.safetensors", d);
    rewrite(FAMILIES "llama-a/model.safetensors", path, "lm_head.weight", "score.weight", SAFETENSORS_F32, 2, shape, w);
    json_t *root =
        changed("llama-a", "{\"architectures\":[\"LlamaForSequenceClassification\"],\"id2label\":{\"0\":\"L\"},"
                           "\"label2id\":{\"L\":0}}");
    snprintf(path, sizeof path, "%s/config.json", d);
    assert_int_equal(json_dump_file(root, path, JSON_INDENT(2)), 0);
    json_decref(root);
    refuse_folder(d, "is a reward model without lm_head.weight");
    load(&m, &f, d, true);
    assert_true(f.head && m.config.value_head);
    float got[33];
    model_download(&m, m.tensor[TENSOR_valuew].offset, got, 33);
    assert_memory_equal(got, w, sizeof w);
    assert_true(got[32] == 0);
    save(&m, &f, files_path("cls2/"), false);
    assert_same_file(d, files_path("cls2"), "model.safetensors");
    assert_same_file(d, files_path("cls2"), "config.json");
    unload(&m, &f), free(d);
}

/* GPT-2 as llm.c's file to a folder and back. */
static void checkpoints(void **state) {
    (void)state;
    Model m = models_random(16), n, k;
    ModelFile f, g;
    models_save(&m, "gpt2.bin", false, "chatml");
    load(&n, &f, files_path("gpt2.bin"), false);
    save(&n, &f, files_path("gpt2-folder/"), false);
    load(&k, &g, files_path("gpt2-folder"), false);
    assert_same_config(&k.config, &m.config, "gpt2");
    assert_int_equal(model_weights_hash(&m), model_weights_hash(&k));
    assert_int_equal(f.tokenizer_bytes, g.tokenizer_bytes);
    assert_memory_equal(f.tokenizer, g.tokenizer, g.tokenizer_bytes);
    assert_string_equal(g.chat_template, "chatml");
    save(&k, &g, files_path("again.bin"), false);
    assert_same_file(files_directory, files_directory, "gpt2.bin");
    size_t a, b;
    char *x = slurp(files_directory, "gpt2.bin", &a), *y = slurp(files_directory, "again.bin", &b);
    assert_int_equal(a, b);
    assert_memory_equal(x, y, a);
    free(x), free(y), unload(&n, &f), unload(&k, &g), model_free(&m);
    load(&n, &f, golden_path("llama-a"), false); /* llm.c's file cannot hold a Llama */
    Error e;
    assert_false(model_save(&n, &f, files_path("llama.bin"), false, NULL, NULL, &e));
    unload(&n, &f);
}

/* ---- outputs that fail ------------------------------------------------------------------------------------------- */

static void atomic(void **state) {
    (void)state;
    Model m;
    ModelFile f;
    Error e;
    char *to = xstrdup(files_path("place/"));
    char path[300];
    load(&m, &f, golden_path("gemma2"), false);
    save(&m, &f, to, false);
    snprintf(path, sizeof path, "%splace/metrics.jsonl", files_path(""));
    put_text(path, "a log");
    snprintf(path, sizeof path, "%splace/logs", files_path(""));
    assert_int_equal(mkdir(path, 0777), 0);
    strcat(path, "/x");
    put_text(path, "x");
    snprintf(path, sizeof path, "%splace/model-00001-of-00002.safetensors", files_path(""));
    put_text(path, "of an older model");
    unload(&m, &f);
    load(&m, &f, golden_path("gemma3"), false); /* replaces the model and keeps what is not a model's */
    save(&m, &f, to, false);
    assert_same_file(golden_path("gemma3"), to, "model.safetensors");
    assert_true(exists(to, "metrics.jsonl") && exists(to, "logs/x"));
    assert_false(exists(to, "model-00001-of-00002.safetensors"));
    assert_int_equal(entries(".tmp"), 0);
    unload(&m, &f);
    /* a folder that is not a model's: nothing in it is removed */
    load(&m, &f, golden_path("gemma3"), false);
    assert_int_equal(mkdir(files_path("notes"), 0777), 0);
    put_text(files_path("notes/LICENSE"), "of something else");
    put_text(files_path("notes/x.safetensors"), "y");
    save(&m, &f, files_path("notes"), false);
    assert_true(exists(files_path("notes"), "LICENSE") && exists(files_path("notes"), "x.safetensors"));
    assert_same_file(golden_path("gemma3"), files_path("notes"), "model.safetensors");
    assert_int_equal(entries(".tmp"), 0);
    unload(&m, &f);
    /* a full disk: no file may be longer than 3000 bytes */
    load(&m, &f, golden_path("qwen2"), false);
    const struct rlimit small = {3000, RLIM_INFINITY};
    struct rlimit before;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    setrlimit(RLIMIT_FSIZE, &small);
    const bool ok = model_save(&m, &f, to, false, NULL, NULL, &e);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_false(ok);
    assert_non_null(strstr(e.text, "cannot write: File too large"));
    assert_same_file(golden_path("gemma3"), to, "model.safetensors");
    assert_same_file(golden_path("gemma3"), to, "config.json");
    assert_true(exists(to, "metrics.jsonl"));
    assert_int_equal(entries(".tmp"), 0);
    /* a value that the type cannot hold */
    const float big = 1e30f;
    model_upload(&m, m.tensor[TENSOR_lnfw].offset, &big, 1);
    assert_false(model_save_folder(&m, &f, to, SAFETENSORS_F16, &e));
    assert_non_null(strstr(e.text, "model.norm.weight: has a value that F16 cannot store"));
    assert_int_equal(entries(".tmp"), 0);
    /* names */
    assert_false(model_save(&m, &f, files_path("absent/x/"), false, NULL, NULL, &e));
    assert_non_null(strstr(e.text, "cannot write to"));
    assert_false(model_save(&m, &f, ".", false, NULL, NULL, &e));
    assert_non_null(strstr(e.text, "name a folder in it"));
    put_text(files_path("file"), "x");
    assert_false(model_save(&m, &f, files_path("file/"), false, NULL, NULL, &e));
    Optimizer o = {0};
    assert_false(model_save(&m, &f, to, false, &o, NULL, &e));
    assert_non_null(strstr(e.text, "expected the file of a training state"));
    unload(&m, &f), free(to);
}

/* ---- mutations --------------------------------------------------------------------------------------------------- */

/* Changed bytes of config.json and of the tensors' file: each folder is read or refused with one line. */
static void mutations(void **state) {
    (void)state;
    uint64_t x = 1;
    int read = 0, refused = 0;
    for (int i = 0; i < FOLDERS; i++) {
        char *d = copy_folder(golden_path(folders[i]), "fuzz");
        for (int which = 0; which < 2; which++) {
            size_t n;
            const char *name = which ? "model.safetensors" : "config.json";
            char *bytes = slurp(d, name, &n), path[300];
            snprintf(path, sizeof path, "%s/%s", d, name);
            for (int turn = 0; turn < 60; turn++) {
                char *copy = (char *)xmalloc(n);
                memcpy(copy, bytes, n);
                for (int k = 0; k <= turn % 3; k++) {
                    x = x * 6364136223846793005u + 1442695040888963407u;
                    const size_t at = (x >> 33) % (which && n > 2500 ? 2500 : n);
                    copy[at] = turn % 2 ? (char)(x >> 25) : "0123456789.,\"e-[]{}:"[(x >> 20) % 20];
                }
                const size_t length = turn % 5 ? n : (x >> 30) % n;
                FILE *f = fopen(path, "w");
                assert_int_equal(fwrite(copy, 1, length, f), length);
                fclose(f);
                free(copy);
                Huggingface h;
                Error e = {""};
                if (huggingface_open(&h, d, &e)) {
                    float values[64];
                    for (size_t k = 0; k < h.parts.count; k++) huggingface_floats(&h, k, 0, values, 4);
                    huggingface_close(&h);
                    read++;
                } else {
                    assert_true(strlen(e.text) > 10 && !strchr(e.text, '\n'));
                    refused++;
                }
            }
            FILE *f = fopen(path, "w");
            assert_int_equal(fwrite(bytes, 1, n, f), n);
            fclose(f);
            free(bytes);
        }
        free(d);
    }
    assert_true(read > 20 && refused > 600);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors),          cmocka_unit_test(round_trip),   cmocka_unit_test(types),
        cmocka_unit_test(configurations),   cmocka_unit_test(spellings),    cmocka_unit_test(written_configurations),
        cmocka_unit_test(unreadable_files), cmocka_unit_test(changed_text), cmocka_unit_test(config_refusals),
        cmocka_unit_test(folder_refusals),  cmocka_unit_test(shards),       cmocka_unit_test(copied),
        cmocka_unit_test(tokenizers),       cmocka_unit_test(value_heads),  cmocka_unit_test(classifiers),
        cmocka_unit_test(checkpoints),      cmocka_unit_test(atomic),       cmocka_unit_test(mutations),
        cmocka_unit_test(threads)};
    return cmocka_run_group_tests(tests, models_setup, models_teardown);
}
