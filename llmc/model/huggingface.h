/* huggingface.h - reader of a model's folder as Hugging Face has it.
 *
 *   config.json                         the configuration (huggingface_config.h)
 *   model.safetensors                   the tensors (safetensors.h, huggingface_names.h), or
 *   model.safetensors.index.json        {"weight_map": {"tensor name": "file name", ...}} and the files that it names
 *   generation_config.json              its eos_token_id is the set of tokens that end a completion
 *   tokenizer.json                      the tokenizer (text/tokenizer_files.h), or vocab.json and merges.txt
 *   chat_template.jinja                 the chat template; else chat_template of tokenizer_config.json (jinja_chat.h)
 *   training_lineage.json               written by this project: the stages of training
 *   reward_model.json                   written by this project: bias and normalisation of a reward model, whose
 *                                       weights are the tensor score.weight
 *   tokenizer.llmc, chat_template.llmc  written by this project for a tokenizer or template that came from another file
 *
 * Every tensor of the model must be in the files, with its shape, as F64, F32, F16 or BF16, and nothing else may be
 * there, because a tensor that is ignored silently is a wrong model. Known and skipped are the buffers of old files:
 * GPT-2's `attn.bias` and `attn.masked_bias` (the causal mask), `rotary_emb.inv_freq`, and an `lm_head.weight` that
 * equals the embeddings of a model whose output matrix is tied to them. A classifier without lm_head.weight is read as
 * tied: its output matrix is never used. Not read are the index's `metadata`, README.md, and a tokenizer.model without
 * one of the other forms of a tokenizer. A pickle (pytorch_model.bin) is refused. So is a file of these names that is
 * there and cannot be read, such as a link into a cache that was emptied, because a missing generation_config.json or
 * tokenizer is no error.
 *
 * The files are mapped into memory, so a rank or a run loads only what it reads. The small files that an output folder
 * needs (huggingface_copied) are kept in memory in a HuggingfaceSource: a run can write its output even if the folder
 * that it came from is gone.
 *
 *     Huggingface h;
 *     if (!huggingface_open(&h, "qwen", e)) return false;
 *     for (size_t i = 0; i < h.parts.count; i++) huggingface_floats(&h, i, 0, weights, 1);     // the first of part i
 *     huggingface_close(&h);
 */
#ifndef LLMC_MODEL_HUGGINGFACE_H
#define LLMC_MODEL_HUGGINGFACE_H

#include "../base/error.h"           /* Error, error_set, xstrdup, xcalloc, ... */
#include "../base/io.h"              /* XXH3_64bits, XXH3_64bits_update, XXH3_state_t, XXH3_64bits_digest, ... */
#include "../base/json_text.h"       /* json_parse_object */
#include "../base/text.h"            /* TextBuffer, text_format, text_free, TokenList, ... */
#include "../text/jinja_chat.h"      /* jinja_chat_open */
#include "../text/tokenizer.h"       /* Tokenizer, tokenizer_free, tokenizer_store */
#include "../text/tokenizer_files.h" /* tokenizer_open_folder */
#include "config.h"                  /* FAMILY_GPT2, ModelConfig */
#include "huggingface_config.h"      /* huggingface_value, huggingface_config_read, huggingface_family, ... */
#include "huggingface_names.h"       /* HuggingfacePart, HuggingfaceParts, huggingface_parts, ... */
#include "safetensors.h"             /* SafeTensor, Safetensors, safetensors_floats, safetensors_close, ... */
#include "tensors.h"                 /* TENSOR_wte */
#include <dirent.h>
#include <fnmatch.h>
#include <jansson.h>

enum { HUGGINGFACE_FILES_MAX = 1000, HUGGINGFACE_COPY_MAX = 1 << 28, HUGGINGFACE_JSON_MAX = 1 << 26 };

/* Names of the files that are passed on to an output folder, byte for byte, without regard to case. A * matches no slash, and
 * no dot with which a name begins. */
static const char *const huggingface_copied[] = {"generation_config.json",
                                                 "tokenizer.json",
                                                 "tokenizer_config.json",
                                                 "special_tokens_map.json",
                                                 "added_tokens.json",
                                                 "vocab.json",
                                                 "merges.txt",
                                                 "encoder.json",
                                                 "vocab.bpe",
                                                 "tokenizer.model",
                                                 "*.tiktoken",
                                                 "chat_template.jinja",
                                                 "chat_template.json",
                                                 "additional_chat_templates/*.jinja",
                                                 "configuration_*.py",
                                                 "modeling_*.py",
                                                 "tokenization_*.py",
                                                 "LICENSE*",
                                                 "LICENCE*",
                                                 "NOTICE*",
                                                 "COPYING*",
                                                 "USE_POLICY*"};

typedef struct HuggingfaceFile {
    char *name; /* in the folder */
    char *bytes;
    size_t n;
} HuggingfaceFile;

/* What an output needs of the folder that a model came from. */
typedef struct HuggingfaceSource {
    char *config; /* text of config.json */
    char *prefix; /* of the tensors' names */
    HuggingfaceFile *file;
    size_t files;
    char *index;                            /* text of model.safetensors.index.json, or NULL */
    json_t *metadata;                       /* of the first safetensors file, or NULL */
    json_t *types;                          /* tensor name -> SafetensorsType */
    json_t *shards;                         /* tensor name -> file name, or NULL: model.safetensors */
    uint64_t tokenizer_hash, template_hash; /* of the tokenizer blob and chat template that were read; 0: none */
} HuggingfaceSource;

static inline void huggingface_source_free(HuggingfaceSource *s) {
    if (!s) return;
    for (size_t i = 0; i < s->files; i++) free(s->file[i].name), free(s->file[i].bytes);
    free(s->config), free(s->prefix), free(s->file), free(s->index);
    json_decref(s->metadata), json_decref(s->types), json_decref(s->shards);
    free(s);
}

static inline const HuggingfaceFile *huggingface_source_file(const HuggingfaceSource *s, const char *name) {
    for (size_t i = 0; s && i < s->files; i++)
        if (!strcmp(s->file[i].name, name)) return &s->file[i];
    return NULL;
}

/* Adds a copied file. Takes over `bytes`. */
static inline void huggingface_source_add(HuggingfaceSource *s, const char *name, char *bytes, size_t n) {
    s->file = (HuggingfaceFile *)xrealloc(s->file, s->files + 1, sizeof *s->file);
    s->file[s->files++] = (HuggingfaceFile){xstrdup(name), bytes, n};
}

typedef struct Huggingface {
    char *path;         /* for messages */
    ModelConfig config; /* value_head: there is a score.weight */
    HuggingfaceSource *source;
    Safetensors *file;
    int files;
    HuggingfaceParts parts;
    const SafeTensor **tensor; /* of each part */
    TokenList stops;           /* tokens that end a completion */
    char *chat_template;       /* or NULL */
    char *note;                /* a warning for the user, or NULL */
    json_t *lineage;           /* array, or NULL */
    char *reward;              /* ModelFile's `reward`, or NULL */
    float bias;                /* of the value head */
    bool headless;             /* a classifier that lacks its output matrix */
} Huggingface;

static inline void huggingface_close(Huggingface *h) {
    for (int i = 0; i < h->files; i++) safetensors_close(&h->file[i]);
    huggingface_parts_free(&h->parts);
    huggingface_source_free(h->source);
    token_list_free(&h->stops);
    json_decref(h->lineage);
    free(h->path), free(h->file), free(h->tensor), free(h->chat_template), free(h->note), free(h->reward);
    *h = (Huggingface){0};
}

/* Whether `path` is a folder. */
static inline bool huggingface_is_folder(const char *path) {
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

/* The caller frees the result. */
static inline char *huggingface_path(const char *folder, const char *name) {
    const size_t n = strlen(folder);
    TextBuffer b = {0};
    text_format(&b, "%s%s%s", folder, n && folder[n - 1] == '/' ? "" : "/", name);
    return b.text;
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

/* Parses the text of an object. name: for messages. */
static inline json_t *huggingface_parse(const char *text, size_t n, const char *name, Error *e) {
    if (!memchr(text, 0, n)) return json_parse_object(text, n, JSON_REJECT_DUPLICATES, name, e);
    error_set(e, "%s: contains a NUL byte, which is not JSON", name);
    return NULL;
}

/* Reads a regular file into new memory with a closing NUL. A pipe is refused, because it may never be written to. */
static inline char *huggingface_bytes(const char *path, size_t most, size_t *n, Error *e) {
    struct stat st;
    if (stat(path, &st)) error_set(e, "%s: cannot open: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode)) error_set(e, "%s: is not a regular file", path);
    else return file_slurp(path, most, n, e);
    return NULL;
}

/* Reads and parses a file of the folder. text: receives the text if it is not NULL. */
static inline json_t *huggingface_json(const char *folder, const char *name, char **text, Error *e) {
    size_t n;
    char *path = huggingface_path(folder, name), *bytes = huggingface_bytes(path, HUGGINGFACE_JSON_MAX, &n, e);
    json_t *root = bytes ? huggingface_parse(bytes, n, path, e) : NULL;
    if (root && text) *text = bytes;
    else free(bytes);
    free(path);
    return root;
}

static inline bool huggingface_has(const char *folder, const char *name) {
    char *path = huggingface_path(folder, name);
    const bool here = file_exists(path);
    free(path);
    return here;
}

/* ---- the safetensors files --------------------------------------------------------------------------------------- */

static inline bool huggingface_open_file(Huggingface *h, const char *name, Error *e) {
    char *path = huggingface_path(h->path, name);
    h->file = (Safetensors *)xrealloc(h->file, (size_t)h->files + 1, sizeof *h->file);
    const bool ok = safetensors_open(&h->file[h->files], path, e);
    h->files += ok;
    free(path);
    return ok;
}

/* Opens the files that the index names, each once. */
static inline bool huggingface_open_shards(Huggingface *h, const json_t *map, const char *index, Error *e) {
    const char *tensor;
    json_t *value, *opened = json_object();
    bool ok = true;
    json_object_foreach((json_t *)map, tensor, value) {
        const char *name = json_string_value(value);
        if (!name) ok = error_set(e, "%s: weight_map: %.100s is not in a file", index, tensor);
        else if (strchr(name, '/') || name[0] == '.' || fnmatch("*.safetensors", name, 0))
            ok = error_set(e, "%s: weight_map: \"%.100s\" is not the name of a safetensors file in this folder", index,
                           name);
        else if (!json_object_get(opened, name)) {
            if (h->files == HUGGINGFACE_FILES_MAX)
                ok = error_set(e, "%s: names more than %d files", index, HUGGINGFACE_FILES_MAX);
            else ok = huggingface_open_file(h, name, e);
            json_object_set_new(opened, name, json_integer(h->files - 1));
        }
        if (!ok) break;
    }
    json_decref(opened);
    return ok;
}

/* Checks that each tensor is in the file that the index names, and that the index names every tensor. */
static inline bool huggingface_check_shards(const Huggingface *h, const json_t *map, const char *index, Error *e) {
    size_t total = 0;
    for (int i = 0; i < h->files; i++) {
        const char *name = strrchr(h->file[i].name, '/') + 1;
        for (size_t k = 0; k < h->file[i].count; k++) {
            const char *tensor = h->file[i].tensor[k].name, *in = json_string_value(json_object_get(map, tensor));
            if (!in || strcmp(in, name))
                return error_set(e, "%s: %.200s: is in %s, the index has it %s%s", index, tensor, name,
                                 in ? "in " : "nowhere", in ? in : "");
        }
        total += h->file[i].count;
    }
    return total == json_object_size(map) ||
           error_set(e, "%s: names %zu tensors, the files have %zu", index, json_object_size(map), total);
}

static inline bool huggingface_open_index(Huggingface *h, Error *e) {
    json_t *root = huggingface_json(h->path, "model.safetensors.index.json", &h->source->index, e);
    char *index = huggingface_path(h->path, "model.safetensors.index.json");
    const json_t *map = json_object_get(root, "weight_map");
    bool ok = root != NULL;
    if (ok && !json_is_object(map)) ok = error_set(e, "%s: has no weight_map", index);
    ok = ok && huggingface_open_shards(h, map, index, e) && huggingface_check_shards(h, map, index, e);
    if (ok) h->source->shards = json_incref((json_t *)map);
    free(index);
    json_decref(root);
    return ok;
}

static inline bool huggingface_open_files(Huggingface *h, Error *e) {
    if (huggingface_has(h->path, "model.safetensors")) return huggingface_open_file(h, "model.safetensors", e);
    if (huggingface_has(h->path, "model.safetensors.index.json")) return huggingface_open_index(h, e);
    if (huggingface_has(h->path, "pytorch_model.bin") || huggingface_has(h->path, "pytorch_model.bin.index.json"))
        return error_set(e,
                         "%s: has pytorch_model.bin, a pickle that could run any program; save the model again as "
                         "model.safetensors",
                         h->path);
    return error_set(e, "%s: has neither model.safetensors nor model.safetensors.index.json", h->path);
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static inline const SafeTensor *huggingface_find(const Huggingface *h, const char *name) {
    const SafeTensor *t = NULL;
    for (int i = 0; !t && i < h->files; i++) t = safetensors_find(&h->file[i], name);
    return t;
}

static inline const SafeTensor *huggingface_find_prefixed(const Huggingface *h, const char *prefix, const char *name) {
    TextBuffer b = {0};
    text_format(&b, "%s%s", prefix, name);
    const SafeTensor *t = huggingface_find(h, b.text);
    text_free(&b);
    return t;
}

/* Finds the prefix of the names by that of the embeddings. */
static inline bool huggingface_find_prefix(Huggingface *h, Error *e) {
    const char *embedding = h->config.family == FAMILY_GPT2 ? "wte.weight" : "embed_tokens.weight";
    const char *prefix[] = {huggingface_prefix(h->config.family), ""};
    for (int i = 0; i < 2; i++)
        if (huggingface_find_prefixed(h, prefix[i], embedding)) {
            h->source->prefix = xstrdup(prefix[i]);
            return true;
        }
    return error_set(e, "%s: has no tensor %s%s", h->path, prefix[0], embedding);
}

/* Shape of a part in the file: shape[2], one dimension for a vector. */
static inline int huggingface_shape(const HuggingfacePart *p, uint64_t shape[2]) {
    shape[0] = p->vector ? p->columns : p->transposed ? p->columns : p->rows;
    shape[1] = p->transposed ? p->rows : p->columns;
    return p->vector ? 1 : 2;
}

static inline bool huggingface_check_part(const Huggingface *h, const HuggingfacePart *p, const SafeTensor *t,
                                          Error *e) {
    uint64_t shape[2];
    TextBuffer found = {0};
    const int dims = huggingface_shape(p, shape);
    if (!t) return error_set(e, "%s: tensor %s is missing", h->path, p->name);
    if (!safetensors_type_is_float(t->type))
        return error_set(e, "%s: tensor %s is %s, covered are F32, BF16, F16 and F64", h->path, p->name,
                         safetensors_type_name(t->type));
    if (t->dims == dims && t->shape[0] == shape[0] && (dims == 1 || t->shape[1] == shape[1])) return true;
    for (int i = 0; i < t->dims; i++) text_format(&found, i ? ", %llu" : "%llu", (unsigned long long)t->shape[i]);
    if (dims == 1)
        error_set(e, "%s: tensor %s has the shape (%s), config.json needs (%llu)", h->path, p->name,
                  found.text ? found.text : "", (unsigned long long)shape[0]);
    else
        error_set(e, "%s: tensor %s has the shape (%s), config.json needs (%llu, %llu)", h->path, p->name,
                  found.text ? found.text : "", (unsigned long long)shape[0], (unsigned long long)shape[1]);
    text_free(&found);
    return false;
}

static inline bool huggingface_ends(const char *s, const char *tail) {
    const size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcmp(s + n - m, tail);
}

/* Checks an output matrix in the files of a model that has none of its own: it must equal the embeddings. */
static inline bool huggingface_check_tied(const Huggingface *h, const SafeTensor *head, Error *e) {
    const SafeTensor *wte = NULL;
    for (size_t i = 0; i < h->parts.count; i++)
        if (h->parts.part[i].tensor == TENSOR_wte) wte = h->tensor[i];
    if (head->type == wte->type && head->elements == wte->elements && head->dims == wte->dims &&
        head->shape[0] == wte->shape[0] && !memcmp(head->data, wte->data, wte->end - wte->begin))
        return true;
    return error_set(e, "%s: lm_head.weight differs from the embeddings, but tie_word_embeddings is true", h->path);
}

/* Checks a tensor that is none of the model's. */
static inline bool huggingface_check_surplus(const Huggingface *h, const SafeTensor *t, Error *e) {
    if (h->config.family == FAMILY_GPT2 &&
        (huggingface_ends(t->name, ".attn.bias") || huggingface_ends(t->name, ".attn.masked_bias")))
        return true;
    if (huggingface_ends(t->name, "rotary_emb.inv_freq")) return true;
    if (h->config.tied && !strcmp(t->name, "lm_head.weight")) return huggingface_check_tied(h, t, e);
    return error_set(e, "%s: tensor %.200s is not part of a %s model with this config.json", h->path, t->name,
                     huggingface_family[h->config.family].type);
}

static inline int huggingface_part_order(const void *a, const void *b) {
    return strcmp(((const HuggingfacePart *)a)->name, ((const HuggingfacePart *)b)->name);
}

/* Finds the tensor of every part and checks that there are no others. skip: names with this beginning or with '~' are
 * not the model's; NULL: there are none. */
static inline bool huggingface_match(Huggingface *h, const char *skip, Error *e) {
    if (!huggingface_find_prefix(h, e)) return false;
    h->headless = h->config.value_head && !h->config.tied && !huggingface_find(h, "lm_head.weight");
    if (h->headless) h->config.tied = 1;
    if (huggingface_find(h, "score.weight")) h->config.value_head = 1;
    h->parts = huggingface_parts(&h->config, h->source->prefix);
    qsort(h->parts.part, h->parts.count, sizeof *h->parts.part, huggingface_part_order);
    h->tensor = (const SafeTensor **)xcalloc(h->parts.count, sizeof *h->tensor);
    h->source->types = json_object();
    for (size_t i = 0; i < h->parts.count; i++) {
        h->tensor[i] = huggingface_find(h, h->parts.part[i].name);
        if (!huggingface_check_part(h, &h->parts.part[i], h->tensor[i], e)) return false;
        json_object_set_new(h->source->types, h->parts.part[i].name, json_integer(h->tensor[i]->type));
    }
    for (int i = 0; i < h->files; i++)
        for (size_t k = 0; k < h->file[i].count; k++) {
            const SafeTensor *t = &h->file[i].tensor[k];
            const bool ours = skip && (!strncmp(t->name, skip, strlen(skip)) || t->name[0] == '~');
            if (ours || json_object_get(h->source->types, t->name)) continue;
            if (!huggingface_check_surplus(h, t, e)) return false;
        }
    return true;
}

/* Reads elements [first, first + n) of part i, in the model's order (row-major, (out, in)), as float32. */
static inline void huggingface_floats(const Huggingface *h, size_t i, size_t first, float *to, size_t n) {
    const HuggingfacePart *p = &h->parts.part[i];
    float row[1024];
    if (!p->transposed) {
        safetensors_floats(h->tensor[i], first, to, n);
        return;
    }
    /* rows of the file are columns of the model: reads the piece of each that the elements need */
    while (n) {
        const size_t r = first / p->columns, c = first % p->columns;
        const size_t rows = c ? 1 : n / p->columns < 1 ? 1 : n / p->columns < 1024 ? n / p->columns : 1024;
        const size_t columns = rows > 1 ? p->columns : n < p->columns - c ? n : p->columns - c;
        for (size_t k = 0; k < columns; k++) {
            safetensors_floats(h->tensor[i], (c + k) * p->rows + r, row, rows);
            for (size_t j = 0; j < rows; j++) to[j * p->columns + k] = row[j];
        }
        to += rows > 1 ? rows * columns : columns;
        first += rows * columns;
        n -= rows * columns;
    }
}

/* ---- other files ------------------------------------------------------------------------------------------------- */

/* Returns the pattern of the copied files that the name in the folder matches, or NULL. No path that matches leads out of the
 * folder. */
static inline const char *huggingface_copy_pattern(const char *name) {
    for (size_t i = 0; i < sizeof huggingface_copied / sizeof *huggingface_copied; i++)
        if (!fnmatch(huggingface_copied[i], name, FNM_CASEFOLD | FNM_PATHNAME | FNM_PERIOD))
            return huggingface_copied[i];
    return NULL;
}

/* Keeps a file of the folder. A folder that only happens to match a pattern, such as LICENSES, is not kept. */
static inline bool huggingface_keep(Huggingface *h, const char *name, const char *pattern, Error *e) {
    size_t n;
    char *path = huggingface_path(h->path, name);
    char *bytes = NULL;
    const bool folder = strchr(pattern, '*') && huggingface_is_folder(path);
    if (!folder) bytes = huggingface_bytes(path, HUGGINGFACE_COPY_MAX, &n, e);
    if (bytes) huggingface_source_add(h->source, name, bytes, n);
    free(path);
    return bytes || folder;
}

/* Keeps the files of the folder, or of its subfolder, that match. */
static inline bool huggingface_keep_files(Huggingface *h, const char *subfolder, Error *e) {
    struct dirent **entry;
    char *path = huggingface_path(h->path, subfolder);
    const int n = scandir(path, &entry, NULL, alphasort);
    bool ok = true;
    if (n < 0) ok = *subfolder || error_set(e, "%s: cannot read the folder: %s", h->path, strerror(errno));
    for (int i = 0; i < n; i++) {
        TextBuffer name = {0};
        text_format(&name, "%s%s%s", subfolder, *subfolder ? "/" : "", entry[i]->d_name);
        const char *pattern = huggingface_copy_pattern(name.text);
        ok = ok && (!pattern || huggingface_keep(h, name.text, pattern, e));
        text_free(&name);
        free(entry[i]);
    }
    if (n >= 0) free(entry);
    free(path);
    return ok;
}

/* Reads the chat template, if there is one, with the folder's special tokens. */
static inline bool huggingface_template(Huggingface *h, Error *e) {
    const HuggingfaceFile *config = huggingface_source_file(h->source, "tokenizer_config.json");
    json_t *root = NULL;
    if (config && !(root = huggingface_parse(config->bytes, config->n, config->name, e))) {
        Error inner = *e;
        return error_set(e, "%.200s/%.700s", h->path, inner.text);
    }
    const bool any = huggingface_value(root, "chat_template") || huggingface_has(h->path, "chat_template.jinja");
    json_decref(root);
    if (!any) return true;
    Error note;
    h->chat_template = jinja_chat_open(h->path, NULL, NULL, &note, e);
    if (h->chat_template && note.text[0]) h->note = xstrdup(note.text);
    return h->chat_template != NULL;
}

/* Reads the tokens that end a completion. */
static inline bool huggingface_read_stops(Huggingface *h, const json_t *root, Error *e) {
    const HuggingfaceFile *file = huggingface_source_file(h->source, "generation_config.json");
    char *name = huggingface_path(h->path, file ? file->name : "config.json");
    json_t *generation = file ? huggingface_parse(file->bytes, file->n, name, e) : NULL;
    const bool ok = (generation || !file) && huggingface_stops(root, generation, h->config.vocab, &h->stops, name, e);
    json_decref(generation);
    free(name);
    return ok;
}

/* Reads a file of the folder into new memory with a closing NUL; NULL in *bytes if there is none. */
static inline bool huggingface_slurp(const char *folder, const char *name, char **bytes, size_t *n, Error *e) {
    *bytes = NULL;
    if (!huggingface_has(folder, name)) return true;
    char *path = huggingface_path(folder, name);
    *bytes = huggingface_bytes(path, HUGGINGFACE_COPY_MAX, n, e);
    free(path);
    return *bytes != NULL;
}

/* Reads the tokenizer as a blob for tokenizer_load(); NULL in *blob if the folder has none. */
static inline bool huggingface_tokenizer(const Huggingface *h, void **blob, size_t *n, Error *e) {
    Tokenizer t = {0};
    char *own;
    if (!huggingface_slurp(h->path, "tokenizer.llmc", &own, n, e)) return false;
    *blob = own;
    if (own) return true;
    const bool pair =
        huggingface_source_file(h->source, "vocab.json") && huggingface_source_file(h->source, "merges.txt");
    if (!pair && !huggingface_source_file(h->source, "tokenizer.json")) return true;
    bool ok = tokenizer_open_folder(&t, h->path, e);
    if (ok && t.vocab > h->config.vocab)
        ok = error_set(e, "%s: a tokenizer of %d tokens does not fit the model's vocabulary of %d", h->path, t.vocab,
                       h->config.vocab);
    ok = ok && tokenizer_store(&t, blob, n, e);
    tokenizer_free(&t);
    if (ok) h->source->tokenizer_hash = XXH3_64bits(*blob, *n);
    return ok;
}

/* Reads what this project wrote in addition. */
static inline bool huggingface_read_own(Huggingface *h, Error *e) {
    char *own;
    size_t n;
    if (h->chat_template) h->source->template_hash = XXH3_64bits(h->chat_template, strlen(h->chat_template));
    if (!huggingface_slurp(h->path, "chat_template.llmc", &own, &n, e)) return false;
    if (own) {
        free(h->chat_template);
        h->chat_template = own;
    }
    if (huggingface_has(h->path, "training_lineage.json")) {
        json_t *root = huggingface_json(h->path, "training_lineage.json", NULL, e);
        if (!root) return false;
        h->lineage = json_incref(json_object_get(root, "lineage"));
        json_decref(root);
        if (!json_is_array(h->lineage))
            return error_set(e, "%s/training_lineage.json: has no array \"lineage\"", h->path);
    }
    if (!huggingface_has(h->path, "reward_model.json")) return true;
    json_t *root = huggingface_json(h->path, "reward_model.json", NULL, e);
    if (!root) return false;
    h->bias = (float)json_number_value(json_object_get(root, "bias"));
    const json_t *reward = huggingface_value(root, "reward");
    if (reward) h->reward = json_dumps(reward, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(root);
    return true;
}

/* Reads the text of config.json, of n bytes. name: its path. */
static inline json_t *huggingface_read_config(Huggingface *h, const char *name, size_t n, Error *e) {
    json_t *root = huggingface_parse(h->source->config, n, name, e);
    if (root && huggingface_config_read(&h->config, root, name, e)) return root;
    json_decref(root);
    return NULL;
}

static inline bool huggingface_open_all(Huggingface *h, Error *e) {
    size_t n;
    if (!huggingface_has(h->path, "config.json"))
        return error_set(e, "%s: is a folder without config.json, expected a model's folder", h->path);
    char *name = huggingface_path(h->path, "config.json");
    h->source->config = huggingface_bytes(name, HUGGINGFACE_JSON_MAX, &n, e);
    json_t *root = h->source->config ? huggingface_read_config(h, name, n, e) : NULL;
    const bool ok = root && huggingface_open_files(h, e) && huggingface_match(h, NULL, e) &&
                    huggingface_keep_files(h, "", e) && huggingface_keep_files(h, "additional_chat_templates", e) &&
                    huggingface_template(h, e) && huggingface_read_stops(h, root, e) && huggingface_read_own(h, e);
    json_decref(root);
    free(name);
    if (ok) h->source->metadata = json_incref(h->file[0].metadata);
    return ok;
}

/* Opens a model's folder and checks all of it but the values. On failure nothing stays open. */
static inline bool huggingface_open(Huggingface *h, const char *path, Error *e) {
    *h = (Huggingface){.path = xstrdup(path)};
    h->source = (HuggingfaceSource *)xcalloc(1, sizeof *h->source);
    for (size_t n = strlen(path); n > 1 && h->path[n - 1] == '/'; n--) h->path[n - 1] = 0;
    if (huggingface_open_all(h, e)) return true;
    huggingface_close(h);
    return false;
}

/* XXH3-64 of config.json and of all bytes of the safetensors files. Reads all of them. */
static inline uint64_t huggingface_hash(const Huggingface *h) {
    XXH3_state_t *state = (XXH3_state_t *)checked_object(XXH3_createState(), "the state of a hash");
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, h->source->config, strlen(h->source->config));
    for (int i = 0; i < h->files; i++) XXH3_64bits_update(state, h->file[i].file, h->file[i].file_bytes);
    const uint64_t hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

#endif
