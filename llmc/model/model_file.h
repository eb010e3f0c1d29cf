/* model_file.h - loading and saving models in any format, with tokenizer, chat template, lineage and training state.
 *
 *   what is read                                   found by              what is written      chosen by the name
 *   a folder as Hugging Face has it                it is a folder        the same             DIR/, or a folder's name
 *   a file of ours (model_container.h)             its first bytes       the same             every other name, and "-"
 *   a GGUF file                                    "GGUF"                the same             .gguf
 *   llm.c's file with our trailer (checkpoint.h)   its magic number      the same             .bin (GPT-2 only)
 *   model.safetensors next to a config.json        its metadata          -
 *
 * Files may be zstd streams (.zst), and be read from pipes. A descriptor such as d12 is a new model with random weights.
 *
 * The lineage is a JSON array with one entry per training stage of the model (stage, parent's hash, options). A training
 * state is a file of ours, whatever its name, that also holds Adam's moments and the trainer's counters: --resume
 * run.state continues bit for bit. With all weights it is also a model: `generate -c run.state` works. A state of
 * low-rank adapters holds these alone and the hash of the base, which has to be named again. If the device keeps bf16
 * weights and float32 master weights (--device cuda --dtype bf16), the weights in the file are those that the model
 * computed with, and a training state also holds the masters.
 *
 *     ModelFile f;
 *     model_load(&model, &f, "sft.bin", NULL, false, backend, device, true, seed, NULL, &e);
 *     model_save(&model, &f, "out.safetensors", MODEL_FLOAT32, NULL, NULL, &e);
 */
#ifndef LLMC_MODEL_MODEL_FILE_H
#define LLMC_MODEL_MODEL_FILE_H

#include "../base/error.h"            /* Error, error_set, xstrdup, xstrndup */
#include "../base/io.h"               /* Reader, reader_close, reader_left, reader_open, ... */
#include "../text/jinja_chat.h"       /* jinja_chat_is */
#include "../text/tokenizer_gguf.h"   /* TokenizerGgufArrays, tokenizer_gguf_free */
#include "backend.h"                  /* Backend, Device, QUANT_BF16, QUANT_F16, ... */
#include "checkpoint.h"               /* checkpoint_holds */
#include "config.h"                   /* ModelConfig, gpt2_config_descriptor */
#include "gguf.h"                     /* Gguf, gguf_close, gguf_open, gguf_read */
#include "gguf_model.h"               /* GgufTokenizer */
#include "gguf_save.h"                /* gguf_check_config */
#include "huggingface.h"              /* Huggingface, huggingface_close, huggingface_has, huggingface_is_folder, ... */
#include "huggingface_config_write.h" /* huggingface_can_describe */
#include "huggingface_save.h"         /* huggingface_is_output */
#include "model.h"                    /* Model, model_check_matrices, model_free */
#include "model_checkpoint.h"         /* model_checkpoint_texts, model_load_checkpoint, model_save_checkpoint */
#include "model_container.h"          /* container_close, model_save_container, Container, container_is_ours, ... */
#include "model_folder.h"             /* model_load_folder, model_save_folder, model_take_texts */
#include "model_gguf.h"               /* model_gguf_of_tokenizer, model_gguf_tokenizer, model_load_gguf, ... */
#include "model_load.h"               /* ModelFile, ModelLoad, model_file_free, model_load_new */
#include "optimizer.h"                /* Optimizer, optimizer_free */
#include "safetensors.h"              /* SAFETENSORS_F32, SAFETENSORS_BF16, SAFETENSORS_F16, ... */

/* ---- loading ----------------------------------------------------------------------------------------------------- */

typedef enum { INPUT_NONE, INPUT_FOLDER, INPUT_CHECKPOINT, INPUT_CONTAINER, INPUT_GGUF } ModelInputKind;

/* An input that is open, and known by its first bytes. */
typedef struct ModelInput {
    ModelInputKind kind;
    char *folder;
    Reader checkpoint;
    Container container;
    Gguf gguf;
} ModelInput;

/* Whether a safetensors file is one of ours. An error is left to its reader. */
static inline bool model_is_container(const char *path) {
    Safetensors s;
    if (!safetensors_open(&s, path, NULL)) return true;
    const bool ours = container_is_ours(&s);
    safetensors_close(&s);
    return ours;
}

/* The folder that holds `path`, if the file is named model.safetensors and is not one of ours, and the folder has a
 * config.json; else NULL. The caller frees it. */
static inline char *model_folder_of(const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (strcmp(name, "model.safetensors")) return NULL;
    char *folder = slash ? xstrndup(path, (size_t)(slash - path) + 1) : xstrdup("./");
    if (huggingface_has(folder, "config.json") && !model_is_container(path)) return folder;
    free(folder);
    return NULL;
}

/* Opens a safetensors or GGUF file at the start of in, which is closed. */
static inline bool model_open_stream(ModelInput *to, const char *path, Reader *in, Error *e) {
    const bool regular = reader_left(in) >= 0 && strcmp(path, "-");
    char *name = xstrdup(in->name);
    void *memory = NULL;
    size_t n = 0;
    if (!regular) memory = reader_rest(in, SIZE_MAX / 4, &n, e);
    bool ok = regular || memory;
    reader_close(in);
    if (ok && to->kind == INPUT_CONTAINER && regular && (to->folder = model_folder_of(path)) != NULL)
        to->kind = INPUT_FOLDER;
    else if (ok && to->kind == INPUT_CONTAINER) ok = container_open(&to->container, name, memory, n, e);
    else if (ok && regular) ok = gguf_open(&to->gguf, path, e);
    else if (ok) {
        to->gguf = (Gguf){.name = xstrdup(name), .file = (const uint8_t *)memory, .bytes = n, .memory = memory};
        ok = gguf_read(&to->gguf, e);
        if (!ok) gguf_close(&to->gguf);
    }
    free(name);
    return ok;
}

/* Opens an input of any kind. On failure nothing stays open. */
static inline bool model_open(ModelInput *to, const char *path, Error *e) {
    Reader in;
    uint8_t first[9] = {0};
    uint64_t header;
    bool failed = false;
    *to = (ModelInput){.kind = INPUT_NONE};
    if (huggingface_is_folder(path)) {
        to->folder = xstrdup(path);
        to->kind = INPUT_FOLDER;
        return true;
    }
    if (!reader_open(&in, path, e)) return false;
    const size_t n = reader_peek(&in, first, sizeof first, &failed, e);
    memcpy(&header, first, sizeof header);
    if (n >= 4 && !memcmp(first, "GGUF", 4)) to->kind = INPUT_GGUF;
    else if (n == sizeof first && header <= SAFETENSORS_HEADER_MAX && first[8] == '{') to->kind = INPUT_CONTAINER;
    else to->kind = INPUT_CHECKPOINT;
    if (failed) {
        reader_close(&in);
        return false;
    }
    to->checkpoint = in;
    return to->kind == INPUT_CHECKPOINT || model_open_stream(to, path, &in, e);
}

/* Loads an open input, which is closed in any case. */
static inline bool model_load_input(Model *m, ModelFile *f, ModelInput *in, const ModelLoad *how, const Backend *b,
                                    Device *d, Optimizer *o, Error *e) {
    bool ok = false;
    switch (in->kind) {
    case INPUT_FOLDER: ok = model_load_folder(m, f, in->folder, how, b, d, o, e); break;
    case INPUT_CHECKPOINT: ok = model_load_checkpoint(m, f, &in->checkpoint, how, b, d, o, e); break;
    case INPUT_CONTAINER: ok = model_load_container(m, f, &in->container, how, b, d, o, e); break;
    case INPUT_GGUF: ok = model_load_gguf(m, f, &in->gguf, how, b, d, o, e); break;
    case INPUT_NONE: break;
    }
    free(in->folder);
    return ok;
}

/* Reads the texts of a folder: its tokenizer and chat template, among others. */
static inline bool model_folder_texts(ModelFile *f, const char *path, Error *e) {
    Huggingface h;
    if (!huggingface_open(&h, path, e)) return false;
    const bool ok = huggingface_tokenizer(&h, &f->tokenizer, &f->tokenizer_bytes, e);
    if (ok) model_take_texts(&h, f);
    huggingface_close(&h);
    return ok;
}

/* Reads the texts of a model, its tokenizer and chat template among them, without its weights. */
static inline bool model_read_texts(ModelFile *f, const char *path, Error *e) {
    ModelInput in;
    bool ok = true;
    *f = (ModelFile){0};
    if (!model_open(&in, path, e)) return false;
    switch (in.kind) {
    case INPUT_FOLDER: ok = model_folder_texts(f, in.folder, e); break;
    case INPUT_CHECKPOINT: ok = model_checkpoint_texts(f, &in.checkpoint, e); break;
    case INPUT_CONTAINER:
        container_take(&in.container, f);
        container_close(&in.container);
        break;
    case INPUT_GGUF:
        ok = model_gguf_tokenizer(&in.gguf, f, e);
        gguf_close(&in.gguf);
        break;
    case INPUT_NONE: break;
    }
    free(in.folder);
    if (!ok) model_file_free(f);
    return ok;
}

/* Loads a model: spec, or a new one. */
static inline bool model_load_spec(Model *m, ModelFile *f, const char *spec, const ModelLoad *how, const Backend *b,
                                   Device *d, Optimizer *o, Error *e) {
    ModelConfig config;
    ModelInput in;
    bool ok = true;
    if (how->shape || gpt2_config_descriptor(spec, &config, &ok, e)) {
        if (how->shape) config = *how->shape;
        return ok && model_load_new(m, spec, &config, how, b, d, o, e);
    }
    return model_open(&in, spec, e) && model_load_input(m, f, &in, how, b, d, o, e);
}

/* Loads the training state how->resume. spec is used only if it is a state of adapters. */
static inline bool model_load_state(Model *m, ModelFile *f, const char *spec, const ModelLoad *how, const Backend *b,
                                    Device *d, Optimizer *o, Error *e) {
    ModelInput in;
    ModelLoad plain = *how;
    plain.resume = NULL;
    if (!model_open(&in, how->resume, e)) return false;
    if (in.kind == INPUT_CONTAINER && in.container.adapters) {
        bool ok = spec || how->shape ||
                  error_set(e, "%s: holds adapters only; name the model that they were trained on, too, with -c",
                            how->resume);
        ok = ok && model_load_spec(m, f, spec, &plain, b, d, o, e);
        if (ok) return model_resume_adapters(m, f, &in.container, how, o, e);
        container_close(&in.container);
        return false;
    }
    if (in.kind == INPUT_CONTAINER && in.container.trainer && (how->lora.rank || how->adapter)) {
        container_close(&in.container);
        return error_set(e, "%s: is a state without adapters, but the run has adapters", how->resume);
    }
    return model_load_input(m, f, &in, &plain, b, d, o, e);
}

/* Loads `spec`: a folder, a file of any format ("-" is standard input), or a descriptor such as d12 for a model with random
 * weights; NULL if how->shape is given. o: an optimizer to create and to fill from a training state's moments, or NULL. With
 * how->resume, loads that training state, and `spec` is the base of its adapters. On failure nothing is left allocated. */
static inline bool model_load_as(Model *m, ModelFile *f, const char *spec, const ModelLoad *how, const Backend *b,
                                 Device *d, Optimizer *o, Error *e) {
    *f = (ModelFile){.lineage = json_array()};
    *m = (Model){0};
    if (o) *o = (Optimizer){0};
    const char *what = spec ? spec : how->resume ? how->resume : "the new model";
    if ((how->resume ? model_load_state(m, f, spec, how, b, d, o, e) : model_load_spec(m, f, spec, how, b, d, o, e)) &&
        model_check_matrices(m, what, e))
        return true;
    if (o) optimizer_free(o, m);
    if (m->backend) model_free(m);
    model_file_free(f);
    return false;
}

/* The same for a single rank, without adapters. */
static inline bool model_load(Model *m, ModelFile *f, const char *spec, const ModelConfig *shape, bool value_head,
                              const Backend *b, Device *d, bool gradients, uint64_t seed, Optimizer *o, Error *e) {
    const ModelLoad how = {.shape = shape, .value_head = value_head, .gradients = gradients, .seed = seed};
    return model_load_as(m, f, spec, &how, b, d, o, e);
}

/* ---- saving ------------------------------------------------------------------------------------------------------ */

/* Number formats of an output, in the order of --output-dtype. Matrices of a GGUF file have it; in a folder, MODEL_FLOAT32
 * means the types of the input. */
typedef enum { MODEL_FLOAT32, MODEL_BF16, MODEL_F16, MODEL_Q8_0, MODEL_DTYPES } ModelDtype;
static const char *const model_dtype_name[MODEL_DTYPES] = {"float32", "bf16", "f16", "q8_0"};
typedef enum { OUTPUT_FOLDER, OUTPUT_CHECKPOINT, OUTPUT_CONTAINER, OUTPUT_GGUF } ModelOutputKind;

/* The format of an output of this name. */
static inline ModelOutputKind model_output_kind(const char *path) {
    const size_t n = strlen(path), end = n > 4 && !strcmp(path + n - 4, ".zst") ? n - 4 : n;
    if (huggingface_is_output(path)) return OUTPUT_FOLDER;
    if (end > 4 && !strncmp(path + end - 4, ".bin", 4)) return OUTPUT_CHECKPOINT;
    if (end > 5 && !strncmp(path + end - 5, ".gguf", 5)) return OUTPUT_GGUF;
    return OUTPUT_CONTAINER;
}

/* Checks that the format of an output of this name has a place for a model of this configuration. */
static inline bool model_check_format(const ModelConfig *c, const char *path, ModelDtype type, Error *e) {
    const ModelOutputKind kind = model_output_kind(path);
    if ((type == MODEL_F16 && kind == OUTPUT_CHECKPOINT) || (type == MODEL_Q8_0 && kind != OUTPUT_GGUF))
        return error_set(e, "%s: this format cannot hold %s, %s", path, model_dtype_name[type],
                         kind == OUTPUT_CHECKPOINT ? "expected float32 or bf16" : "expected float32, bf16 or f16");
    switch (kind) {
    case OUTPUT_FOLDER: return huggingface_can_describe(c, path, e);
    case OUTPUT_CHECKPOINT: return checkpoint_holds(c, path, e);
    case OUTPUT_GGUF: return gguf_check_config(c, path, e);
    case OUTPUT_CONTAINER: break;
    }
    return checkpoint_holds(c, path, NULL) || huggingface_can_describe(c, path, e);
}

/* The same for the tokenizer of f, too: GGUF cannot express every one. For use before a run whose end writes the output. */
static inline bool model_check_output(const ModelConfig *c, const ModelFile *f, const char *path, ModelDtype type,
                                      Error *e) {
    TokenizerGgufArrays arrays;
    GgufTokenizer t;
    Error inner;
    if (!model_check_format(c, path, type, e)) return false;
    if (model_output_kind(path) != OUTPUT_GGUF || f->gguf || !f->tokenizer) return true;
    if (!model_gguf_of_tokenizer(f, &arrays, &t, &inner)) return error_set(e, "%s: %s", path, inner.text);
    tokenizer_gguf_free(&arrays);
    return true;
}

/* Whether an output of this name is for other programs, which do not find the chat template of f, because it is not
 * Jinja: a folder keeps it in a file of ours, and GGUF has no place for it. */
static inline bool model_hides_template(const ModelFile *f, const char *path) {
    const ModelOutputKind kind = model_output_kind(path);
    return (kind == OUTPUT_FOLDER || kind == OUTPUT_GGUF) && f->chat_template && !jinja_chat_is(f->chat_template);
}

/* Writes a model in the format of its name, or a training state, in the format of model_container.h, if an optimizer and
 * the trainer's counters (JSON text) are given. A state's weights are float32. The file or folder appears under `path`
 * only when all of it is on the disk. Collective if the optimizer is sharded, with model_save_beside(). */
static inline bool model_save(const Model *m, const ModelFile *f, const char *path, ModelDtype type, const Optimizer *o,
                              const char *trainer, Error *e) {
    static const SafetensorsType safetensors[] = {SAFETENSORS_F32, SAFETENSORS_BF16, SAFETENSORS_F16};
    static const QuantType gguf[] = {QUANT_F32, QUANT_BF16, QUANT_F16, QUANT_Q8_0};
    if (o) {
        if (huggingface_is_output(path))
            return error_set(e, "%s: is a folder, expected the file of a training state", path);
        return model_save_container(m, f, path, SAFETENSORS_F32, o, trainer, e);
    }
    if (!model_check_format(&m->config, path, type, e)) return false;
    switch (model_output_kind(path)) {
    case OUTPUT_FOLDER:
        return model_save_folder(m, f, path, type == MODEL_FLOAT32 ? SAFETENSORS_TYPE_COUNT : safetensors[type], e);
    case OUTPUT_CHECKPOINT: return model_save_checkpoint(m, f, path, type == MODEL_BF16, e);
    case OUTPUT_GGUF: return model_save_gguf(m, f, path, gguf[type], e);
    case OUTPUT_CONTAINER: break;
    }
    return model_save_container(m, f, path, safetensors[type], NULL, NULL, e);
}

#endif
