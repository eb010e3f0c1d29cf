/* peft.h - adapters in the folders of the library peft: adapter_config.json and adapter_model.safetensors.
 *
 * A tensor is named base_model.model.MODULE.lora_A.weight, (rank, in), or ...lora_B.weight, (out, rank), with MODULE as
 * in the base's own files (peft_modules() has the table); DoRA's ends in .lora_magnitude_vector, (out). Which projections
 * have an adapter follows from these names, not from target_modules, which may also be a regular expression. Of the
 * configuration the rank, alpha, use_rslora and use_dora count. Refused, because they compute something else: trained
 * biases or other modules, patterns of ranks, layers without an adapter, other kinds of adapters. Ignored, because they do
 * not change what a finished adapter computes: lora_dropout, init_lora_weights (of LoRA's own kinds), inference_mode,
 * task_type, names and revisions.
 *
 *     LoraConfig lora;
 *     Peft p;
 *     if (!peft_open(&p, "adapter/", &config, &lora, e)) return false;
 *     config.lora = lora;                                // a model is made with this configuration
 *     PeftPut put = NULL;                                // put(context, at, values, n) stores n elements from `at` on
 *     peft_read(&p, put, &model);
 *     peft_close(&p);
 *     bool ok = peft_write(&model, "adapter/", "SmolLM2-135M-Instruct", e);
 */
#ifndef LLMC_MODEL_PEFT_H
#define LLMC_MODEL_PEFT_H

#include "../base/error.h"    /* error_set, Error, xmalloc, xcalloc */
#include "config.h"           /* ModelConfig, FAMILY_GPT2, LORA_DOWN, LORA_O, ... */
#include "huggingface.h"      /* huggingface_path, huggingface_json */
#include "huggingface_save.h" /* huggingface_make_folder, huggingface_put_json */
#include "model.h"            /* Model, model_download */
#include "safetensors.h"      /* safetensors_find, SAFETENSORS_F32, SafeTensor, Safetensors, ... */
#include "tensors.h"          /* TENSOR_COUNT, TensorInfo, model_tensors */
#include "transformer.h"      /* LINEAR_qkv, LINEAR_fc, LINEAR_attproj, LINEAR_fcproj, ... */
#include <errno.h>
#include <jansson.h>
#include <sys/stat.h>

#define PEFT_CONFIG  "adapter_config.json"
#define PEFT_TENSORS "adapter_model.safetensors"

/* A module with an adapter: its name, the projections that it computes, and the linear layer of which it is a part. */
typedef struct PeftModule {
    const char *name;
    int flags, linear;
} PeftModule;

/* The modules of a layer, in the order of the model's tensors. Returns their number, at most 7. */
static inline int peft_modules(const ModelConfig *c, PeftModule to[7]) {
    static const PeftModule gpt2[] = {{"attn.c_attn", LORA_OF_QKV, LINEAR_qkv},
                                      {"attn.c_proj", LORA_O, LINEAR_attproj},
                                      {"mlp.c_fc", LORA_OF_FC, LINEAR_fc},
                                      {"mlp.c_proj", LORA_DOWN, LINEAR_fcproj}};
    static const PeftModule phi3[] = {{"self_attn.qkv_proj", LORA_OF_QKV, LINEAR_qkv},
                                      {"self_attn.o_proj", LORA_O, LINEAR_attproj},
                                      {"mlp.gate_up_proj", LORA_OF_FC, LINEAR_fc},
                                      {"mlp.down_proj", LORA_DOWN, LINEAR_fcproj}};
    static const PeftModule other[] = {
        {"self_attn.q_proj", LORA_Q, LINEAR_qkv},   {"self_attn.k_proj", LORA_K, LINEAR_qkv},
        {"self_attn.v_proj", LORA_V, LINEAR_qkv},   {"self_attn.o_proj", LORA_O, LINEAR_attproj},
        {"mlp.gate_proj", LORA_GATE, LINEAR_fc},    {"mlp.up_proj", LORA_UP, LINEAR_fc},
        {"mlp.down_proj", LORA_DOWN, LINEAR_fcproj}};
    const int n = lora_fused(c) ? 4 : 7;
    memcpy(to, c->family == FAMILY_GPT2 ? gpt2 : c->family == FAMILY_PHI3 ? phi3 : other, (size_t)n * sizeof *to);
    return n;
}

/* One array of the file: its name, and where its elements are among those of all tensors of a model. */
typedef struct PeftTensor {
    char name[112];
    size_t at, rows, columns;
    bool vector; /* (rows) in the file; columns is 1 */
} PeftTensor;

static inline int peft_by_name(const void *a, const void *b) {
    return strcmp(((const PeftTensor *)a)->name, ((const PeftTensor *)b)->name);
}

/* Returns the arrays of the adapters of configuration c, sorted by name, in new memory. */
static inline PeftTensor *peft_tensors(const ModelConfig *c, size_t *count) {
    PeftModule module[7];
    TensorInfo t[TENSOR_COUNT];
    const int modules = peft_modules(c, module);
    PeftTensor *list = (PeftTensor *)xcalloc((size_t)(21 * c->layers), sizeof *list);
    size_t row[TENSOR_COUNT] = {0}; /* rows of a tensor that belong to earlier modules */
    model_tensors(c, t);
    *count = 0;
    for (int k = 0; k < modules; k++) {
        const LinearInfo *linear = model_linear(module[k].linear);
        static const char *const suffix[] = {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"};
        const int outputs = lora_rows(c, module[k].flags), rows[3] = {c->lora.rank, outputs, outputs};
        const int tensor[3] = {linear->lora_a, linear->lora_b, linear->dora_m};
        if (!(c->lora.targets & module[k].flags)) continue;
        for (int which = 0; which < (c->lora.dora ? 3 : 2); which++) {
            const int index = tensor[which];
            const bool vector = which == 2;
            for (int l = 0; l < c->layers; l++) {
                PeftTensor *p = &list[(*count)++];
                snprintf(p->name, sizeof p->name, "base_model.model.%s.%d.%s.%s",
                         c->family == FAMILY_GPT2 ? "transformer.h" : "model.layers", l, module[k].name, suffix[which]);
                p->rows = (size_t)rows[which];
                p->columns = vector ? 1 : t[index].columns;
                p->vector = vector;
                p->at = t[index].offset + (size_t)l * t[index].rows * t[index].columns + row[index] * p->columns;
            }
            row[index] += (size_t)rows[which];
        }
    }
    qsort(list, *count, sizeof *list, peft_by_name);
    return list;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

typedef struct Peft {
    Safetensors file;
    ModelConfig config; /* the base's, with the adapters */
} Peft;

static inline void peft_close(Peft *p) {
    safetensors_close(&p->file);
    *p = (Peft){0};
}

/* Checks the keys of the configuration that would compute something else than a LoRA of one rank. */
static inline bool peft_check(const json_t *root, const char *name, Error *e) {
    static const char *const absent[] = {"modules_to_save",   "layer_replication",
                                         "target_parameters", "trainable_token_indices",
                                         "megatron_config",   "alora_invocation_tokens",
                                         "use_qalora",        "lora_bias",
                                         "use_bdlora",        "kasa_config",
                                         "velora_config",     "monteclora_config",
                                         "arrow_config"};
    const char *type = json_string_value(json_object_get(root, "peft_type"));
    const char *bias = json_string_value(json_object_get(root, "bias"));
    if (!type || strcmp(type, "LORA"))
        return error_set(e, "%s: peft_type is %s, only LORA is supported", name, type ? type : "absent");
    if (bias && strcmp(bias, "none")) return error_set(e, "%s: bias is \"%s\", only \"none\" is supported", name, bias);
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        const json_t *value = json_object_get(root, absent[i]);
        if (value && !json_is_null(value) && !json_is_false(value) && json_array_size(value) + json_object_size(value))
            return error_set(e, "%s: %s is not supported", name, absent[i]);
        if (json_is_true(value)) return error_set(e, "%s: %s is not supported", name, absent[i]);
    }
    const char *start = json_string_value(json_object_get(root, "init_lora_weights"));
    if (start && strcmp(start, "gaussian") && strcmp(start, "orthogonal") && strcmp(start, "eva"))
        return error_set(e, "%s: init_lora_weights is %s, which changes the base; convert it to a plain LoRA", name,
                         start);
    static const char *const patterns[] = {"rank_pattern", "alpha_pattern"};
    for (int i = 0; i < 2; i++)
        if (json_object_size(json_object_get(root, patterns[i])))
            return error_set(e, "%s: %s is not supported; all adapters must have one rank and alpha", name,
                             patterns[i]);
    return true;
}

/* Reads rank and scale from adapter_config.json. */
static inline bool peft_read_config(const char *folder, LoraConfig *lora, Error *e) {
    json_t *root = huggingface_json(folder, PEFT_CONFIG, NULL, e);
    if (!root) return false;
    char *name = huggingface_path(folder, PEFT_CONFIG);
    bool ok = peft_check(root, name, e);
    const json_t *rank = json_object_get(root, "r"), *alpha = json_object_get(root, "lora_alpha");
    if (ok && (!json_is_integer(rank) || json_integer_value(rank) < 1 || json_integer_value(rank) > LORA_RANK_MAX))
        ok = error_set(e, "%s: r must be a whole number from 1 to %d", name, LORA_RANK_MAX);
    if (ok && !json_is_number(alpha)) ok = error_set(e, "%s: lora_alpha must be a number", name);
    if (ok) {
        const double r = (double)json_integer_value(rank), a = json_number_value(alpha);
        lora->rank = (int32_t)r;
        lora->dora = json_is_true(json_object_get(root, "use_dora"));
        lora->scale = (float)(a / (json_is_true(json_object_get(root, "use_rslora")) ? sqrt(r) : r));
    }
    free(name);
    json_decref(root);
    return ok;
}

/* Sets lora.targets: the modules of which layer 0 has an adapter. */
static inline void peft_find_targets(Peft *p) {
    ModelConfig all = p->config;
    size_t n;
    PeftModule module[7];
    all.lora.targets = LORA_ALL;
    PeftTensor *list = peft_tensors(&all, &n);
    const int modules = peft_modules(&all, module);
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < modules; k++) {
            char end[64];
            snprintf(end, sizeof end, ".0.%s.lora_A.weight", module[k].name);
            if (strstr(list[i].name, end) && safetensors_find(&p->file, list[i].name))
                p->config.lora.targets |= module[k].flags;
        }
    free(list);
}

/* Checks that the file has exactly the arrays of its targets, in the right shapes. */
static inline bool peft_check_tensors(const Peft *p, Error *e) {
    size_t n;
    PeftTensor *list = peft_tensors(&p->config, &n);
    bool ok = true;
    for (size_t i = 0; ok && i < p->file.count; i++) {
        PeftTensor key;
        snprintf(key.name, sizeof key.name, "%s", p->file.tensor[i].name);
        const PeftTensor *want = (PeftTensor *)bsearch(&key, list, n, sizeof *list, peft_by_name);
        const SafeTensor *t = &p->file.tensor[i];
        if (!want || strcmp(want->name, t->name))
            ok = error_set(e, "%s: %.200s is no adapter of a projection of this model", p->file.name, t->name);
        else if (t->dims != (want->vector ? 1 : 2) || t->shape[0] != want->rows ||
                 (!want->vector && t->shape[1] != want->columns) || !safetensors_type_is_float(t->type))
            ok = error_set(e, "%s: %s is not an array of %zu x %zu numbers", p->file.name, t->name, want->rows,
                           want->columns);
    }
    for (size_t i = 0; ok && i < n; i++)
        ok = safetensors_find(&p->file, list[i].name) ||
             error_set(e, "%s: it has no tensor %s", p->file.name, list[i].name);
    free(list);
    return ok && (n || error_set(e, "%s: it has no adapters", p->file.name));
}

/* Opens the adapter of a base of configuration c. *lora: its rank, scale and targets. */
static inline bool peft_open(Peft *p, const char *folder, const ModelConfig *c, LoraConfig *lora, Error *e) {
    *p = (Peft){.config = *c};
    p->config.lora = (LoraConfig){0};
    if (!peft_read_config(folder, &p->config.lora, e)) return false;
    char *name = huggingface_path(folder, PEFT_TENSORS);
    const bool open = safetensors_open(&p->file, name, e);
    free(name);
    if (!open) return false;
    peft_find_targets(p);
    if (!peft_check_tensors(p, e)) {
        peft_close(p);
        return false;
    }
    *lora = p->config.lora;
    return true;
}

/* Reads all adapters and gives each piece to put(context, at, values, n): elements at ... at + n - 1 of the tensors of
 * a model with these adapters. */
typedef void (*PeftPut)(void *context, size_t at, const float *values, size_t n);
static inline void peft_read(const Peft *p, PeftPut put, void *context) {
    size_t n;
    PeftTensor *list = peft_tensors(&p->config, &n);
    for (size_t i = 0; i < n; i++) {
        const size_t elements = list[i].rows * list[i].columns;
        float *host = (float *)xmalloc(elements * sizeof *host);
        safetensors_floats(safetensors_find(&p->file, list[i].name), 0, host, elements);
        put(context, list[i].at, host, elements);
        free(host);
    }
    free(list);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static inline bool peft_write_config(const Model *m, const char *folder, const char *base, Error *e) {
    PeftModule module[7];
    const ModelConfig *c = &m->config;
    const int n = peft_modules(c, module);
    const double rank = c->lora.rank, plain = c->lora.scale * rank, stabilised = c->lora.scale * sqrt(rank);
    const bool rslora = fabs(plain - round(plain)) > 1e-4 && fabs(stabilised - round(stabilised)) < 1e-4;
    const double alpha = rslora ? stabilised : plain;
    json_t *modules = json_array();
    for (int k = 0; k < n; k++)
        if (c->lora.targets & module[k].flags) /* GPT-2's c_proj is two modules, so their names need the parent */
            json_array_append_new(
                modules, json_string(c->family == FAMILY_GPT2 ? module[k].name : strchr(module[k].name, '.') + 1));
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:i, s:o, s:f, s:s, s:o, s:b, s:b, s:b, s:n, s:b, s:b, s:{}, s:{}}", "peft_type", "LORA",
        "task_type", "CAUSAL_LM", "base_model_name_or_path", base ? base : "", "r", c->lora.rank, "lora_alpha",
        fabs(alpha - round(alpha)) < 1e-4 ? json_integer((json_int_t)round(alpha)) : json_real(alpha), "lora_dropout",
        0.0, "bias", "none", "target_modules", modules, "fan_in_fan_out", c->family == FAMILY_GPT2, "use_rslora",
        rslora, "use_dora", c->lora.dora, "modules_to_save", "init_lora_weights", true, "inference_mode", true,
        "rank_pattern", "alpha_pattern");
    return huggingface_put_json(folder, PEFT_CONFIG, root, 0, e);
}

static inline bool peft_write_tensors(const Model *m, const char *folder, Error *e) {
    size_t n;
    SafetensorsWriter w = {0};
    PeftTensor *list = peft_tensors(&m->config, &n);
    for (size_t i = 0; i < n; i++)
        safetensors_add(&w, list[i].name, SAFETENSORS_F32, list[i].vector ? 1 : 2,
                        (const uint64_t[]){list[i].rows, list[i].columns});
    char *name = huggingface_path(folder, PEFT_TENSORS);
    json_t *metadata = json_pack("{s:s}", "format", "pt");
    bool ok = safetensors_begin(&w, name, metadata, e); /* the writer sorts by name as well */
    json_decref(metadata);
    free(name);
    for (size_t i = 0; ok && i < n; i++) {
        const size_t elements = list[i].rows * list[i].columns;
        float *host = (float *)xmalloc(elements * sizeof *host);
        model_download(m, list[i].at, host, elements);
        ok = safetensors_put_floats(&w, list[i].name, SAFETENSORS_F32, host, elements, e);
        free(host);
    }
    free(list);
    ok = ok && safetensors_commit(&w, e);
    safetensors_abort(&w);
    return ok;
}

/* Makes a folder for adapters, and checks that files can be written there. */
static inline bool peft_make_folder(const char *folder, Error *e) {
    if (!huggingface_make_folder(folder, e)) return false;
    return !access(folder, W_OK | X_OK) || error_set(e, "%s: %s", folder, strerror(errno));
}

/* Writes the adapters of m into a folder, which is made if it does not exist. base: the name or path of the base model,
 * for base_model_name_or_path. Each file appears under its name when all of it is on the disk. */
static inline bool peft_write(const Model *m, const char *folder, const char *base, Error *e) {
    return peft_make_folder(folder, e) && peft_write_tensors(m, folder, e) && peft_write_config(m, folder, base, e);
}

#endif
