/* model_container.h - the single file of a model or of a training state: a safetensors file with everything in it.
 *
 * The tensors have the names and layouts of Hugging Face (huggingface_names.h), so any reader of safetensors opens the
 * file. The value head is F32 in any case. Further names begin with "llmc.":
 *
 *   llmc.score.bias                     the value head's bias, F32 (1)
 *   llmc.optimizer.*, llmc.adapter.*    of a training state (model_state.h)
 *   llmc.checksum                       U8 (8), the last tensor: the XXH3-64 of all bytes before its own. The format has no
 *                                       trailer, but sorts tensors by the size of their elements
 *
 * __metadata__ holds texts. A value that is not UTF-8 is base64, under "base64:" and its key.
 *
 *   format              "pt", as in all files of transformers
 *   llmc                the version of this layout, 1; no other safetensors file has it
 *   config.json         the configuration: the input's text with what changed, or a new one (huggingface_config.h)
 *   llm.c               for a GPT-2 that config.json cannot describe: fields 0 to 16 of llm.c's header (checkpoint.h), JSON
 *   tokenizer           the blob for tokenizer_load()
 *   chat_template       text
 *   lineage, stops      JSON: the stages of training; the tokens that end a completion
 *   reward              JSON: kind and normalisation of a reward model, with a value head only
 *   trainer             JSON: the counters of a training state
 *   adapter             JSON: rank, targets, scale and use of DoRA of the adapters of a training state, and the hash of
 *                       the base model (model_weights_hash()), whose weights the file does not have
 *   source              JSON: what else a folder was that the model came from: metadata, types and division of its tensors,
 *                       and the hashes of its tokenizer and template
 *   file:NAME           a file of that folder, from which a folder with the same bytes is made again
 *   gguf                entries of the GGUF file that the model came from (model_gguf.h)
 *
 * The reader refuses all other keys and names, another version, and a wrong checksum. A regular file is mapped into
 * memory; a pipe or a zstd stream is read into memory as a whole. The file is written in one pass.
 *
 *     if (!model_save_container(&model, &file, "-", SAFETENSORS_BF16, NULL, NULL, &e)) return false;
 */
#ifndef LLMC_MODEL_MODEL_CONTAINER_H
#define LLMC_MODEL_MODEL_CONTAINER_H

#include "../base/base64.h"           /* base64_decode, base64_encode */
#include "../base/error.h"            /* error_set, Error, checked_object, xcalloc, ... */
#include "../base/io.h"               /* XXH3_64bits_digest, XXH3_64bits_update, XXH3_state_t, ... */
#include "../base/text.h"             /* text_free, TextBuffer, text_format, token_list_append, ... */
#include "backend.h"                  /* Backend, Device */
#include "checkpoint.h"               /* checkpoint_holds, checkpoint_config, checkpoint_header */
#include "config.h"                   /* LoraConfig, ModelConfig, model_config_check, LORA_ALL, ... */
#include "huggingface.h"              /* HuggingfaceSource, Huggingface, huggingface_close, ... */
#include "huggingface_config_write.h" /* huggingface_can_describe, huggingface_config_write */
#include "huggingface_names.h"        /* HuggingfacePart, HuggingfaceParts, huggingface_parts, ... */
#include "huggingface_save.h"         /* HuggingfaceOutput, huggingface_changed_config, huggingface_find_part, ... */
#include "lora.h"                     /* lora_merged */
#include "model.h"                    /* Model, model_download, model_grow_vocab, model_zero_grads */
#include "model_folder.h"             /* model_read_parts, model_take_texts */
#include "model_load.h"               /* ModelFile, ModelLoad, model_weights_hash, model_load_lora, ... */
#include "model_state.h"              /* MODEL_STATE_ADAPTER, MODEL_STATE_OPTIMIZER, model_state_read, ... */
#include "optimizer.h"                /* Optimizer */
#include "peft.h"                     /* PeftTensor */
#include "safetensors.h"              /* Safetensors, SafetensorsType, SafeTensor, safetensors_find, ... */
#include "tensors.h"                  /* TENSOR_valuew, TENSOR_valueb */

#include <assert.h>
#include <fnmatch.h>
#include <jansson.h>

enum { CONTAINER_SUM = 8, CONTAINER_HEADER_FIELDS = 17 };

#define CONTAINER_VERSION  "1"
#define CONTAINER_CHECKSUM "llmc.checksum"
#define CONTAINER_BIAS     "llmc.score.bias"

typedef struct Container {
    Huggingface model; /* of one file; without parts if it holds adapters only */
    void *memory;      /* of a stream, or NULL */
    bool sourced;      /* the model came from a folder */
    bool adapters;     /* it is the state of adapters, without the weights of the base */
    uint64_t base;     /* hash of the base */
    char *trainer;     /* the other fields are those of a ModelFile */
    void *tokenizer, *gguf;
    size_t tokenizer_bytes, gguf_bytes;
    uint64_t hash;
} Container;

static inline void container_close(Container *c) {
    huggingface_close(&c->model);
    free(c->memory), free(c->trainer), free(c->tokenizer), free(c->gguf);
    *c = (Container){0};
}

/* Whether this is a file of this project. */
static inline bool container_is_ours(const Safetensors *s) { return json_object_get(s->metadata, "llmc") != NULL; }

/* ---- reading the metadata ---------------------------------------------------------------------------------------- */

/* Reads a value of the metadata into new memory with a closing NUL; NULL in *bytes if there is none. */
static inline bool container_bytes(const Safetensors *s, const char *key, void **bytes, size_t *n, Error *e) {
    TextBuffer other = {0};
    text_format(&other, "base64:%s", key);
    const json_t *text = json_object_get(s->metadata, key), *coded = json_object_get(s->metadata, other.text);
    text_free(&other);
    *bytes = NULL;
    *n = 0;
    if (text && coded) return error_set(e, "%s: __metadata__: %.100s is there twice", s->name, key);
    if (text) {
        *n = json_string_length(text);
        *bytes = xstrndup(json_string_value(text), *n);
    } else if (coded) {
        *bytes = base64_decode(json_string_value(coded), json_string_length(coded), n);
        if (!*bytes) return error_set(e, "%s: __metadata__: %.100s is not base64", s->name, key);
    }
    return true;
}

/* The same for a text: it has no NUL. */
static inline bool container_text(const Safetensors *s, const char *key, char **text, Error *e) {
    size_t n;
    void *bytes;
    if (!container_bytes(s, key, &bytes, &n, e)) return false;
    *text = (char *)bytes;
    return !bytes || strlen(*text) == n || error_set(e, "%s: __metadata__: %.100s contains a NUL byte", s->name, key);
}

/* Reads a JSON value, an array or an object; NULL in *value if there is none. */
static inline bool container_json(const Safetensors *s, const char *key, bool array, json_t **value, Error *e) {
    char *text = NULL;
    *value = NULL;
    bool ok = container_text(s, key, &text, e);
    if (ok && text) {
        *value = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
        if (array ? !json_is_array(*value) : !json_is_object(*value))
            ok = error_set(e, "%s: __metadata__: %.100s is not a JSON %s", s->name, key, array ? "array" : "object");
    }
    free(text);
    return ok;
}

/* Checks that every key is known. */
static inline bool container_check_keys(const Safetensors *s, Error *e) {
    static const char *const known[] = {"format",        "llmc",    "config.json", "llm.c",  "tokenizer",
                                        "chat_template", "lineage", "stops",       "reward", "trainer",
                                        "adapter",       "source",  "gguf"};
    const char *key;
    json_t *value;
    const char *version = json_string_value(json_object_get(s->metadata, "llmc"));
    if (strcmp(version, CONTAINER_VERSION))
        return error_set(e, "%s: is of version %.20s, expected " CONTAINER_VERSION, s->name, version);
    json_object_foreach(s->metadata, key, value) {
        const char *plain = strncmp(key, "base64:", 7) ? key : key + 7;
        bool found = !strncmp(plain, "file:", 5);
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) found = found || !strcmp(plain, known[i]);
        if (!found) return error_set(e, "%s: __metadata__: key \"%.100s\" is not known", s->name, key);
    }
    return true;
}

/* Reads the files of the folder. */
static inline bool container_read_files(const Safetensors *s, HuggingfaceSource *to, Error *e) {
    const char *key;
    json_t *value;
    json_object_foreach(s->metadata, key, value) {
        const char *plain = strncmp(key, "base64:", 7) ? key : key + 7;
        void *bytes;
        size_t n;
        if (strncmp(plain, "file:", 5)) continue;
        if (!huggingface_copy_pattern(plain + 5))
            return error_set(e, "%s: __metadata__: \"%.100s\" is not a file of a model's folder", s->name, plain);
        if (huggingface_source_file(to, plain + 5))
            return error_set(e, "%s: __metadata__: %.100s is there twice", s->name, plain);
        if (!container_bytes(s, plain, &bytes, &n, e)) return false;
        huggingface_source_add(to, plain + 5, (char *)bytes, n);
    }
    return true;
}

/* Replaces names of types by their numbers. */
static inline bool container_read_types(const Safetensors *s, json_t *types, Error *e) {
    const char *key;
    json_t *value;
    json_object_foreach(types, key, value) {
        int type = 0;
        const char *name = json_string_value(value);
        while (type < SAFETENSORS_TYPE_COUNT && (!name || strcmp(name, safetensors_type_name((SafetensorsType)type))))
            type++;
        if (type == SAFETENSORS_TYPE_COUNT || !safetensors_type_is_float((SafetensorsType)type))
            return error_set(e, "%s: __metadata__: source: %.100s has no type of numbers", s->name, key);
        json_object_set_new(types, key, json_integer(type));
    }
    return true;
}

/* Checks that all values are texts, or the names of safetensors files. */
static inline bool container_check_texts(const Safetensors *s, const json_t *object, bool names, Error *e) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        const char *text = json_string_value(value);
        if (!text || (names && (strchr(text, '/') || text[0] == '.' || fnmatch("*.safetensors", text, 0))))
            return error_set(e, "%s: __metadata__: source: %.100s is not valid", s->name, key);
    }
    return true;
}

static inline uint64_t container_hash_value(const json_t *text) {
    return json_is_string(text) ? strtoull(json_string_value(text), NULL, 16) : 0;
}

/* Reads "source" and the files. Takes place of the types of this file. */
static inline bool container_read_source(Container *c, Error *e) {
    const Safetensors *s = &c->model.file[0];
    HuggingfaceSource *to = c->model.source;
    json_t *root;
    if (!container_json(s, "source", false, &root, e)) {
        json_decref(root);
        return false;
    }
    c->sourced = root != NULL;
    json_t *types = json_object_get(root, "types"), *shards = json_object_get(root, "shards");
    const json_t *index = json_object_get(root, "index");
    bool ok = !root || (json_is_object(types) && json_is_object(json_object_get(root, "metadata")) &&
                        (!shards || (json_is_object(shards) && json_is_string(index))));
    if (!ok) error_set(e, "%s: __metadata__: source is not valid", s->name);
    ok = ok && container_read_types(s, types, e) && container_check_texts(s, shards, true, e) &&
         container_check_texts(s, json_object_get(root, "metadata"), false, e) && container_read_files(s, to, e);
    if (ok && root) {
        json_decref(to->types);
        to->types = json_incref(types);
        to->metadata = json_incref(json_object_get(root, "metadata"));
        to->shards = json_incref(shards);
        if (index) to->index = xstrdup(json_string_value(index));
        to->tokenizer_hash = container_hash_value(json_object_get(root, "tokenizer"));
        to->template_hash = container_hash_value(json_object_get(root, "template"));
    }
    json_decref(root);
    return ok;
}

/* Reads the header of an llm.c file that is given instead of config.json. */
static inline bool container_read_header(Container *c, const json_t *list, Error *e) {
    const char *name = c->model.path;
    int32_t h[CONTAINER_HEADER_FIELDS] = {0};
    bool ok = json_array_size(list) == CONTAINER_HEADER_FIELDS;
    for (size_t i = 0; ok && i < CONTAINER_HEADER_FIELDS; i++) {
        const json_t *x = json_array_get(list, i);
        ok = json_is_integer(x) && json_integer_value(x) >= INT32_MIN && json_integer_value(x) <= INT32_MAX;
        h[i] = (int32_t)json_integer_value(x);
    }
    if (!ok) return error_set(e, "%s: __metadata__: llm.c is not a list of %d numbers", name, CONTAINER_HEADER_FIELDS);
    c->model.config = checkpoint_config(h);
    if (!model_config_check(&c->model.config, name, e) || !checkpoint_holds(&c->model.config, name, e)) return false;
    return c->model.config.padded_vocab / 2 <= c->model.config.vocab + 64 ||
           error_set(e, "%s: padded vocabulary is %d for a vocabulary of %d", name, c->model.config.padded_vocab,
                     c->model.config.vocab);
}

/* Reads the configuration. */
static inline bool container_read_config(Container *c, Error *e) {
    const Safetensors *s = &c->model.file[0];
    json_t *list;
    bool ok =
        container_json(s, "llm.c", true, &list, e) && container_text(s, "config.json", &c->model.source->config, e);
    if (ok && list) ok = container_read_header(c, list, e);
    else if (ok && !c->model.source->config) ok = error_set(e, "%s: __metadata__: has no config.json", s->name);
    else if (ok) {
        TextBuffer name = {0};
        text_format(&name, "%s: config.json", s->name);
        json_t *root = huggingface_read_config(&c->model, name.text, strlen(c->model.source->config), e);
        ok = root != NULL;
        json_decref(root);
        text_free(&name);
    }
    json_decref(list);
    return ok;
}

/* Reads "adapter" into the configuration. */
static inline bool container_read_adapter(Container *c, Error *e) {
    const Safetensors *s = &c->model.file[0];
    LoraConfig *lora = &c->model.config.lora;
    json_t *root;
    bool ok = container_json(s, "adapter", false, &root, e);
    c->adapters = ok && root;
    if (c->adapters) {
        const json_t *rank = json_object_get(root, "rank"), *targets = json_object_get(root, "targets");
        const json_t *scale = json_object_get(root, "scale"), *dora = json_object_get(root, "dora");
        ok = json_is_integer(rank) && json_integer_value(rank) > 0 && json_integer_value(rank) <= LORA_RANK_MAX &&
             json_is_integer(targets) && json_integer_value(targets) > 0 && json_integer_value(targets) <= LORA_ALL &&
             json_is_number(scale) && (!dora || json_is_boolean(dora)) && json_is_string(json_object_get(root, "base"));
        if (!ok) error_set(e, "%s: __metadata__: adapter is not valid", s->name);
        lora->rank = (int32_t)json_integer_value(rank);
        lora->targets = (int32_t)json_integer_value(targets);
        lora->scale = (float)json_number_value(scale);
        lora->dora = json_is_true(dora);
        c->base = container_hash_value(json_object_get(root, "base"));
        ok = ok && model_config_check(&c->model.config, s->name, e);
    }
    json_decref(root);
    return ok;
}

static inline bool container_read_stops(Container *c, Error *e) {
    const Safetensors *s = &c->model.file[0];
    json_t *list;
    const json_t *id;
    size_t i;
    bool ok = container_json(s, "stops", true, &list, e);
    json_array_foreach(list, i, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= c->model.config.vocab)
            ok = ok && error_set(e, "%s: __metadata__: stops: has a token outside the vocabulary", s->name);
        else token_list_append(&c->model.stops, (int32_t)json_integer_value(id));
    }
    json_decref(list);
    return ok;
}

/* Reads all texts but the configuration and the source. */
static inline bool container_read_texts(Container *c, Error *e) {
    const Safetensors *s = &c->model.file[0];
    return container_read_stops(c, e) && container_json(s, "lineage", true, &c->model.lineage, e) &&
           container_text(s, "chat_template", &c->model.chat_template, e) &&
           container_text(s, "reward", &c->model.reward, e) && container_text(s, "trainer", &c->trainer, e) &&
           container_bytes(s, "tokenizer", &c->tokenizer, &c->tokenizer_bytes, e) &&
           container_bytes(s, "gguf", &c->gguf, &c->gguf_bytes, e);
}

/* ---- reading the tensors ----------------------------------------------------------------------------------------- */

/* Checks the checksum, and sets the hash of the whole file. */
static inline bool container_check_sum(Container *c, Error *e) {
    const Safetensors *s = &c->model.file[0];
    const SafeTensor *sum = safetensors_find(s, CONTAINER_CHECKSUM);
    uint64_t stored;
    if (!sum || sum->type != SAFETENSORS_U8 || sum->end - sum->begin != CONTAINER_SUM || sum->end != s->data_bytes)
        return error_set(e, "%s: does not end in the tensor " CONTAINER_CHECKSUM, s->name);
    XXH3_state_t *state = (XXH3_state_t *)checked_object(XXH3_createState(), "the state of a hash");
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, s->file, s->file_bytes - CONTAINER_SUM);
    const uint64_t hash = XXH3_64bits_digest(state);
    memcpy(&stored, sum->data, sizeof stored);
    XXH3_64bits_update(state, sum->data, CONTAINER_SUM);
    c->hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash == stored || error_set(e, "%s: checksum is %016llx, expected %016llx: the file is damaged", s->name,
                                       (unsigned long long)hash, (unsigned long long)stored);
}

static inline bool container_begins(const char *name, const char *prefix) {
    return !strncmp(name, prefix, strlen(prefix));
}

/* Checks the names that are not those of a model: model_state_read() checks the shapes of the optimizer's. */
static inline bool container_check_names(const Container *c, Error *e) {
    const Safetensors *s = &c->model.file[0];
    for (size_t i = 0; i < s->count; i++) {
        const char *name = s->tensor[i].name;
        if (!strcmp(name, CONTAINER_CHECKSUM) || !strcmp(name, CONTAINER_BIAS) ||
            container_begins(name, MODEL_STATE_OPTIMIZER) ||
            (c->adapters ? container_begins(name, MODEL_STATE_ADAPTER) || !strcmp(name, "score.weight")
                         : !container_begins(name, "llmc.")))
            continue;
        return error_set(e, "%s: tensor %.200s is not known", s->name, name);
    }
    return true;
}

/* Reads the bias of the value head. */
static inline bool container_read_bias(Container *c, Error *e) {
    const Safetensors *s = &c->model.file[0];
    const SafeTensor *bias = safetensors_find(s, CONTAINER_BIAS);
    if (!c->model.config.value_head) return !bias || error_set(e, "%s: has a bias without a value head", s->name);
    if (!bias || bias->type != SAFETENSORS_F32 || bias->elements != 1)
        return error_set(e, "%s: has no tensor " CONTAINER_BIAS " of one number", s->name);
    safetensors_floats(bias, 0, &c->model.bias, 1);
    return true;
}

/* Finds the tensors of the model; of a state with adapters only the value head. */
static inline bool container_match(Container *c, Error *e) {
    Huggingface *h = &c->model;
    const SafeTensor *score = safetensors_find(&h->file[0], "score.weight");
    if (!container_check_names(c, e)) return false;
    if (!c->adapters) return huggingface_match(h, "llmc.", e) && container_read_bias(c, e);
    h->config.value_head = score != NULL;
    if (score && (!safetensors_type_is_float(score->type) || score->dims != 2 || score->shape[0] != 1 ||
                  score->shape[1] != (uint64_t)h->config.width))
        return error_set(e, "%s: tensor score.weight has another type or shape than config.json needs", h->path);
    return container_read_bias(c, e);
}

static inline bool container_read(Container *c, Error *e) {
    if (!container_is_ours(&c->model.file[0]))
        return error_set(e,
                         "%s: has no configuration in its __metadata__; name the folder of the model, with its "
                         "config.json, instead of this file",
                         c->model.path);
    return container_check_keys(&c->model.file[0], e) && container_check_sum(c, e) && container_read_config(c, e) &&
           container_read_adapter(c, e) && container_match(c, e) && container_read_source(c, e) &&
           container_read_texts(c, e);
}

/* Opens a file in memory, which the container takes over, or maps the file `path` if memory is NULL, and checks all of it.
 * name: for messages. On failure nothing stays open. */
static inline bool container_open(Container *c, const char *name, void *memory, size_t n, Error *e) {
    *c = (Container){.memory = memory, .model.path = xstrdup(name)};
    c->model.source = (HuggingfaceSource *)xcalloc(1, sizeof *c->model.source);
    c->model.file = (Safetensors *)xcalloc(1, sizeof *c->model.file);
    const bool opened = memory ? safetensors_memory(&c->model.file[0], name, memory, n, e)
                               : safetensors_open(&c->model.file[0], name, e);
    c->model.files = opened;
    if (opened && container_read(c, e)) return true;
    container_close(c);
    return false;
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

/* Takes over the texts. A state of adapters leaves f what the base brought along: its folder and entries. */
static inline void container_take(Container *c, ModelFile *f) {
    if (!c->sourced) {
        huggingface_source_free(c->model.source);
        c->model.source = NULL;
    }
    if (c->adapters) {
        c->model.source = f->source;
        f->source = NULL;
        c->model.note = f->note;
        f->note = NULL;
    } else {
        f->gguf = c->gguf;
        f->gguf_bytes = c->gguf_bytes;
        c->gguf = NULL;
    }
    free(f->chat_template), free(f->reward), free(f->tokenizer), free(f->trainer);
    token_list_free(&f->stops);
    model_take_texts(&c->model, f);
    f->tokenizer = c->tokenizer;
    f->tokenizer_bytes = c->tokenizer_bytes;
    f->trainer = c->trainer;
    f->hash = c->hash;
    c->tokenizer = NULL;
    c->trainer = NULL;
}

/* model_load_as() for an open container, which is closed in any case. Adapters that the run asks for are new ones: those
 * of a state are read by model_resume_adapters(). */
static inline bool model_load_container(Model *m, ModelFile *f, Container *c, const ModelLoad *how, const Backend *b,
                                        Device *d, Optimizer *o, Error *e) {
    ModelConfig config = c->model.config;
    bool ok = true;
    if (c->adapters)
        ok = error_set(e,
                       "%s: holds the adapters of a training state and no model; give it with --resume, and the model "
                       "that it began with with -c",
                       c->model.path);
    ok = ok && model_make_all(m, &config, how, NULL, b, d, o, e);
    ok = ok && model_read_parts(&c->model, m, o, e);
    if (ok) {
        if (how->value_head && !c->model.config.value_head) model_new_head(m, o, how->seed);
        ok = model_load_lora(m, o, how, e);
    }
    if (ok && o && c->trainer && !m->config.lora.rank) ok = model_state_read(&c->model.file[0], m, o, e);
    if (ok) container_take(c, f);
    container_close(c);
    return ok;
}

/* Gives a loaded base the adapters and moments of a training state, an open container, which is closed in any case. */
static inline bool model_resume_adapters(Model *m, ModelFile *f, Container *c, const ModelLoad *how, const Optimizer *o,
                                         Error *e) {
    const ModelConfig *state = &c->model.config;
    const LoraConfig *a = &state->lora, *b = &m->config.lora;
    const char *name = c->model.path;
    bool ok = true;
    if (memcmp(a, b, sizeof *a))
        ok = error_set(e, "%s: its adapters have rank %d, targets %d, scale %g and %s, expected %d, %d, %g and %s",
                       name, a->rank, a->targets, (double)a->scale, a->dora ? "DoRA" : "no DoRA", b->rank, b->targets,
                       (double)b->scale, b->dora ? "DoRA" : "no DoRA");
    if (ok && state->vocab > m->config.vocab && state->vocab <= m->config.padded_vocab)
        model_grow_vocab(m, state->vocab, how->seed);
    if (ok && (state->width != m->config.width || model_weights_hash(m) != c->base))
        ok = error_set(
            e, "%s: its adapters were trained on another model than that of -c (or with another --dtype or --quantize)",
            name);
    if (ok && m->config.value_head != state->value_head)
        ok = error_set(e, "%s: the model %s a value head, the state %s", name, m->config.value_head ? "has" : "lacks",
                       state->value_head ? "has one" : "has none");
    if (ok && state->value_head) {
        float *head = (float *)xmalloc((size_t)(state->width + 1) * sizeof *head);
        safetensors_floats(safetensors_find(&c->model.file[0], "score.weight"), 0, head, (size_t)state->width);
        head[state->width] = c->model.bias;
        model_put_weights(m, o, m->tensor[TENSOR_valuew].offset, head, (size_t)state->width + 1);
        free(head);
    }
    ok = ok && model_state_read_adapters(&c->model.file[0], m, o, e) &&
         (!o || model_state_read(&c->model.file[0], m, o, e));
    if (ok) container_take(c, f);
    container_close(c);
    return ok;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static inline void container_put(json_t *metadata, const char *key, const void *bytes, size_t n) {
    const char *text = (const char *)bytes;
    if (!bytes) return;
    if (!memchr(text, 0, n) && utf8_valid(text, n) == n) {
        json_object_set_new(metadata, key, json_stringn_nocheck(text, n));
        return;
    }
    TextBuffer coded = {0}, name = {0};
    text_format(&name, "base64:%s", key);
    base64_encode(&coded, bytes, n);
    json_object_set_new(metadata, name.text, json_stringn_nocheck(coded.text ? coded.text : "", coded.length));
    text_free(&coded), text_free(&name);
}

/* Puts the text of a JSON value, which it releases. */
static inline void container_put_json(json_t *metadata, const char *key, json_t *value) {
    char *text = (char *)checked_object(json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS), "a JSON text");
    container_put(metadata, key, text, strlen(text));
    free(text);
    json_decref(value);
}

static inline json_t *container_hash_text(uint64_t hash) {
    char text[20];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
    return json_string(text);
}

static inline void container_put_source(json_t *metadata, const HuggingfaceSource *s) {
    json_t *types = json_object(), *root = json_object(), *value;
    const char *key;
    json_object_foreach(s->types, key, value) {
        json_object_set_new(types, key, json_string(safetensors_type_name((SafetensorsType)json_integer_value(value))));
    }
    json_object_set_new(root, "types", types);
    json_object_set_new(root, "metadata", s->metadata ? json_incref(s->metadata) : json_object());
    if (s->shards) {
        json_object_set(root, "shards", s->shards);
        json_object_set_new(root, "index", json_string(s->index));
    }
    if (s->tokenizer_hash) json_object_set_new(root, "tokenizer", container_hash_text(s->tokenizer_hash));
    if (s->template_hash) json_object_set_new(root, "template", container_hash_text(s->template_hash));
    container_put_json(metadata, "source", root);
    for (size_t i = 0; i < s->files; i++) {
        TextBuffer name = {0};
        text_format(&name, "file:%s", s->file[i].name);
        container_put(metadata, name.text, s->file[i].bytes, s->file[i].n);
        text_free(&name);
    }
}

/* Puts the configuration. A GPT-2 that config.json cannot describe is described by llm.c's header. */
static inline bool container_put_config(json_t *metadata, const Model *m, const HuggingfaceSource *source,
                                        const ModelFile *f, SafetensorsType type, const char *path, Error *e) {
    const ModelConfig *c = &m->config;
    const HuggingfaceOutput out = {.source = source, .type = SAFETENSORS_TYPE_COUNT};
    const bool plain = huggingface_can_describe(c, path, NULL) && c->padded_vocab == gpt2_padded_vocab(c->vocab);
    if (!plain && checkpoint_holds(c, path, NULL)) {
        int32_t h[CONTAINER_HEADER_FIELDS];
        json_t *list = json_array();
        checkpoint_header(c, false, h);
        for (int i = 0; i < CONTAINER_HEADER_FIELDS; i++) json_array_append_new(list, json_integer(h[i]));
        container_put_json(metadata, "llm.c", list);
        return true;
    }
    if (!huggingface_can_describe(c, path, e)) return false;
    TextBuffer b = {0};
    const bool ok = !source || huggingface_changed_config(&b, c, &out, e);
    if (ok && !source) huggingface_config_write(&b, c, huggingface_type_word(type), &f->stops);
    if (ok) container_put(metadata, "config.json", b.text, b.length);
    text_free(&b);
    return ok;
}

/* Returns the metadata of a file, or NULL. adapters: it is the state of adapters. */
static inline json_t *container_metadata(const Model *m, const ModelFile *f, SafetensorsType type, bool adapters,
                                         const char *trainer, const char *path, Error *e) {
    const LoraConfig *lora = &m->config.lora;
    const HuggingfaceSource *source = adapters ? NULL : f->source;
    json_t *metadata = json_pack("{s:s,s:s}", "format", "pt", "llmc", CONTAINER_VERSION);
    if (!container_put_config(metadata, m, source, f, type, path, e)) {
        json_decref(metadata);
        return NULL;
    }
    json_t *stops = json_array();
    for (int32_t i = 0; i < f->stops.count; i++) json_array_append_new(stops, json_integer(f->stops.ids[i]));
    container_put_json(metadata, "stops", stops);
    container_put_json(metadata, "lineage", f->lineage ? json_incref(f->lineage) : json_array());
    container_put(metadata, "tokenizer", f->tokenizer, f->tokenizer_bytes);
    container_put(metadata, "chat_template", f->chat_template, f->chat_template ? strlen(f->chat_template) : 0);
    if (m->config.value_head) container_put(metadata, "reward", f->reward, f->reward ? strlen(f->reward) : 0);
    container_put(metadata, "trainer", trainer, trainer ? strlen(trainer) : 0);
    if (adapters) {
        json_t *adapter =
            json_pack("{s:i,s:i,s:b,s:o,s:o}", "rank", lora->rank, "targets", lora->targets, "dora", lora->dora,
                      "scale", json_real((double)lora->scale), "base", container_hash_text(model_weights_hash(m)));
        container_put_json(metadata, "adapter", adapter);
    } else container_put(metadata, "gguf", f->gguf, f->gguf_bytes);
    if (source) container_put_source(metadata, source);
    return metadata;
}

/* What container_put_tensor() needs. */
typedef struct ContainerOutput {
    SafetensorsWriter w;
    const Model *m;
    const Optimizer *o;
    HuggingfaceParts parts; /* sorted by name */
    PeftTensor *adapter;
    size_t adapters;
} ContainerOutput;

/* Announces all tensors. */
static inline void container_plan(ContainerOutput *c, const char *prefix, SafetensorsType type, bool adapters) {
    c->parts = huggingface_parts(&c->m->config, prefix);
    qsort(c->parts.part, c->parts.count, sizeof *c->parts.part, huggingface_part_order);
    for (size_t i = 0; i < c->parts.count; i++) {
        const HuggingfacePart *p = &c->parts.part[i];
        uint64_t shape[2];
        const int dims = huggingface_shape(p, shape);
        const bool head = p->tensor == TENSOR_valuew;
        if (!adapters || head) safetensors_add(&c->w, p->name, head ? SAFETENSORS_F32 : type, dims, shape);
    }
    if (c->m->config.value_head) safetensors_add(&c->w, CONTAINER_BIAS, SAFETENSORS_F32, 1, (const uint64_t[]){1});
    if (adapters) c->adapter = model_state_plan_adapters(&c->w, c->m, &c->adapters);
    if (c->o) model_state_plan(&c->w, c->m, c->o);
    safetensors_add(&c->w, CONTAINER_CHECKSUM, SAFETENSORS_U8, 1, (const uint64_t[]){CONTAINER_SUM});
}

/* Writes one tensor. */
static inline bool container_put_tensor(ContainerOutput *c, const SafeTensor *t, Error *e) {
    if (container_begins(t->name, MODEL_STATE_OPTIMIZER)) return model_state_put(&c->w, c->m, c->o, t->name, e);
    if (container_begins(t->name, MODEL_STATE_ADAPTER))
        return model_state_put_adapter(&c->w, c->m, c->adapter, c->adapters, t->name, e);
    if (!strcmp(t->name, CONTAINER_CHECKSUM)) {
        const uint64_t hash = writer_hash(&c->w.out);
        return safetensors_put(&c->w, &hash, sizeof hash, e);
    }
    if (!strcmp(t->name, CONTAINER_BIAS)) {
        float bias;
        model_download(c->m, c->m->tensor[TENSOR_valueb].offset, &bias, 1);
        return safetensors_put(&c->w, &bias, sizeof bias, e);
    }
    return huggingface_put_part(&c->w, c->m, huggingface_find_part(&c->parts, t->name), t->type, lora_merged, e);
}

/* Writes a model with its adapters added to the weights, or a training state if o is not NULL, of which trainer holds the
 * counters as JSON. type: of the weights, F32 or BF16 or F16. */
static inline bool model_save_container(const Model *m, const ModelFile *f, const char *path, SafetensorsType type,
                                        const Optimizer *o, const char *trainer, Error *e) {
    const bool adapters = o && m->config.lora.rank;
    const char *prefix = f->source && !adapters ? f->source->prefix : huggingface_prefix(m->config.family);
    ContainerOutput c = {.m = m, .o = o};
    json_t *metadata = container_metadata(m, f, type, adapters, trainer, path, e);
    if (!metadata) return false;
    container_plan(&c, prefix, type, adapters);
    bool ok = safetensors_begin(&c.w, path, metadata, e);
    json_decref(metadata);
    for (size_t i = 0; ok && i < c.w.count; i++) {
        assert(i + 1 < c.w.count || !strcmp(c.w.tensor[i].name, CONTAINER_CHECKSUM));
        ok = container_put_tensor(&c, &c.w.tensor[i], e);
    }
    ok = ok && safetensors_commit(&c.w, e);
    safetensors_abort(&c.w);
    huggingface_parts_free(&c.parts);
    free(c.adapter);
    if (o && o->sharded) model_zero_grads(m);
    return ok;
}

#endif
