/* huggingface_save.h - writer of a model's folder as Hugging Face has it.
 *
 * The folder is written under a temporary name next to its own, FOLDER.llmc-XXXXXX.tmp. When every file is on the disk,
 * it takes its name. An existing folder of that name is exchanged with it in one step and removed only afterwards; files
 * in it that are not part of a model, such as logs, are moved to the new folder, and all files if it has no
 * config.json. If anything fails, the existing folder is unchanged.
 *
 *   config.json              the input's text with only these values changed: vocab_size if tokens were added, dtype or
 *                            torch_dtype if the type of the tensors changed, and architectures and num_labels if a
 *                            value head was added or removed; a new one if the model did not come from a folder
 *   generation_config.json   the input's; eos_token_id is changed if there are further tokens that end a completion
 *   model.safetensors        in the type of each tensor of the input, or in the type asked for. More than 8 GB are
 *                            divided into model-00001-of-0000N.safetensors of at most 5 GB with an index; the input's own
 *                            division is kept if the tensors are the same
 *   huggingface_copied       copied byte for byte (huggingface.h has the names)
 *   chat_template.jinja      a Jinja template that differs from the input's
 *   training_lineage.json, reward_model.json, tokenizer.llmc, chat_template.llmc     as huggingface.h describes them
 *
 * A folder whose model was not changed has the same bytes as its input in all of these files. The value head's weights
 * are score.weight, as in transformers' ...ForSequenceClassification, which has no bias: its bias, which changes no
 * ranking, is only in reward_model.json. An output matrix that is not tied is written as well, so that the model can be
 * trained further; transformers skips it. A new model's tensors are float32.
 *
 *     const HuggingfaceOutput o = {.type = SAFETENSORS_BF16, .chat_template = chat};
 *     if (!huggingface_save(&model, &o, "out/", &e)) return false;
 */
#ifndef LLMC_MODEL_HUGGINGFACE_SAVE_H
#define LLMC_MODEL_HUGGINGFACE_SAVE_H

#include "../base/error.h"            /* Error, error_set, xstrdup, xmalloc, ... */
#include "../base/io.h"               /* XXH3_64bits, io_leftovers, Writer, io_temporary, ... */
#include "../base/text.h"             /* text_free, TextBuffer, TokenList, text_format, ... */
#include "../text/tokenizer.h"        /* Tokenizer, tokenizer_free, tokenizer_load */
#include "../text/tokenizer_write.h"  /* tokenizer_edit_config, tokenizer_edit_json, tokenizer_to_config, ... */
#include "config.h"                   /* ModelConfig */
#include "huggingface.h"              /* huggingface_path, HuggingfaceFile, huggingface_parse, ... */
#include "huggingface_config.h"       /* huggingface_config_read, huggingface_ids_text, huggingface_stops */
#include "huggingface_config_write.h" /* huggingface_config_change, huggingface_architecture_name, ... */
#include "huggingface_names.h"        /* HuggingfaceParts, HuggingfacePart, huggingface_parts, ... */
#include "lora.h"                     /* lora_merged */
#include "model.h"                    /* Model, model_each_chunk, ModelChunk, model_download */
#include "safetensors.h"              /* SafetensorsType, SAFETENSORS_TYPE_COUNT, SAFETENSORS_F32, ... */
#include "tensors.h"                  /* TENSOR_valueb */
#include <dirent.h>
#include <fnmatch.h>
#include <ftw.h>
#include <jansson.h>

#define HUGGINGFACE_ONE_FILE 8000000000u /* bytes of tensors up to which one file is written */
#define HUGGINGFACE_SHARD    5000000000u /* bytes of tensors in one of several files */

typedef struct HuggingfaceOutput {
    const HuggingfaceSource *source; /* of the input, or NULL */
    SafetensorsType type;            /* of all tensors; SAFETENSORS_TYPE_COUNT: those of the input */
    const void *tokenizer;           /* blob, or NULL */
    size_t tokenizer_bytes;
    const char *chat_template; /* or NULL */
    const json_t *lineage;     /* array, or NULL */
    const char *reward;        /* JSON, or NULL */
    TokenList stops;           /* tokens that end a completion */
    uint64_t one_file, shard;  /* limits in bytes; 0: the constants above */
} HuggingfaceOutput;

/* Whether an output of this name is a folder: the name ends in '/', or it is the name of a folder. */
static inline bool huggingface_is_output(const char *path) {
    const size_t n = strlen(path);
    return (n && path[n - 1] == '/') || huggingface_is_folder(path);
}

/* ---- the tensors ------------------------------------------------------------------------------------------------- */

static inline SafetensorsType huggingface_type(const HuggingfaceOutput *o, const char *name) {
    if (o->type != SAFETENSORS_TYPE_COUNT) return o->type;
    const json_t *type = o->source ? json_object_get(o->source->types, name) : NULL;
    if (type) return (SafetensorsType)json_integer_value(type);
    if (!o->source) return SAFETENSORS_F32;
    const char *key;
    json_t *value;
    json_object_foreach(o->source->types, key, value) { /* a new head has the type of the embeddings */
        if (huggingface_ends(key, "wte.weight") || huggingface_ends(key, "embed_tokens.weight"))
            return (SafetensorsType)json_integer_value(value);
    }
    return SAFETENSORS_F32;
}

static inline uint64_t huggingface_part_bytes(const HuggingfaceOutput *o, const HuggingfacePart *p) {
    return (uint64_t)p->rows * p->columns * (safetensors_type_bits(huggingface_type(o, p->name)) / 8);
}

/* Writes the values of a part. download: model_download(), or lora_merged() to add the model's adapters. */
static inline bool huggingface_put_part(SafetensorsWriter *w, const Model *m, const HuggingfacePart *p,
                                        SafetensorsType type,
                                        void (*download)(const Model *m, size_t at, float *host, size_t n), Error *e) {
    const size_t n = p->rows * p->columns;
    ModelChunk c = {0};
    bool ok = true;
    if (!p->transposed) {
        while (ok && model_each_chunk(&c, n)) {
            download(m, p->at + c.at, c.host, c.n);
            ok = safetensors_put_floats(w, p->name, type, c.host, c.n, e);
        }
        free(c.host);
        return ok;
    }
    float *x = (float *)xmalloc(n * sizeof *x), *y = (float *)xmalloc(n * sizeof *y);
    while (model_each_chunk(&c, n)) {
        download(m, p->at + c.at, c.host, c.n);
        memcpy(x + c.at, c.host, c.n * sizeof *x);
    }
    for (size_t block = 0; block < p->rows; block += 16)
        for (size_t k = 0; k < p->columns; k++)
            for (size_t r = block; r < block + 16 && r < p->rows; r++) y[k * p->rows + r] = x[r * p->columns + k];
    ok = safetensors_put_floats(w, p->name, type, y, n, e);
    free(x), free(y);
    return ok;
}

static inline const HuggingfacePart *huggingface_find_part(const HuggingfaceParts *p, const char *name) {
    const HuggingfacePart key = {.name = (char *)name};
    return (const HuggingfacePart *)bsearch(&key, p->part, p->count, sizeof key, huggingface_part_order);
}

/* Writes the parts of one file. parts: sorted by name. in: file number of each part. */
static inline bool huggingface_put_file(const Model *m, const HuggingfaceOutput *o, const HuggingfaceParts *parts,
                                        const int *in, int number, const char *path, Error *e) {
    SafetensorsWriter w = {0};
    for (size_t i = 0; i < parts->count; i++) {
        uint64_t shape[2];
        if (in[i] != number) continue;
        const int dims = huggingface_shape(&parts->part[i], shape);
        safetensors_add(&w, parts->part[i].name, huggingface_type(o, parts->part[i].name), dims, shape);
    }
    json_t *metadata = o->source && o->source->metadata ? json_copy(o->source->metadata) : json_object();
    if (!json_object_get(metadata, "format")) json_object_set_new(metadata, "format", json_string("pt"));
    bool ok = safetensors_begin(&w, path, metadata, e);
    json_decref(metadata);
    for (size_t i = 0; ok && i < w.count; i++)
        ok = huggingface_put_part(&w, m, huggingface_find_part(parts, w.tensor[i].name), w.tensor[i].type, lora_merged,
                                  e);
    ok = ok && safetensors_commit(&w, e);
    safetensors_abort(&w);
    return ok;
}

/* Sets the file number of each part, from 0, and the names of the files. Returns the number of files. */
static inline int huggingface_divide(const HuggingfaceOutput *o, const HuggingfaceParts *parts, int *in,
                                     json_t *names) {
    uint64_t total = 0, used = 0;
    int files = 1;
    for (size_t i = 0; i < parts->count; i++) {
        in[i] = 0;
        total += huggingface_part_bytes(o, &parts->part[i]);
    }
    if (total <= (o->one_file ? o->one_file : HUGGINGFACE_ONE_FILE)) {
        json_array_append_new(names, json_string("model.safetensors"));
        return 1;
    }
    for (size_t i = 0; i < parts->count; i++) {
        const uint64_t bytes = huggingface_part_bytes(o, &parts->part[i]);
        if (used && used + bytes > (o->shard ? o->shard : HUGGINGFACE_SHARD)) {
            files++;
            used = 0;
        }
        used += bytes;
        in[i] = files - 1;
    }
    for (int i = 0; i < files; i++) {
        char name[64];
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, files);
        json_array_append_new(names, json_string(name));
    }
    return files;
}

/* The input's own division, if it had several files with exactly these tensors. Returns the number of files, or 0. */
static inline int huggingface_same_division(const HuggingfaceOutput *o, const HuggingfaceParts *parts, int *in,
                                            json_t *names) {
    const json_t *map = o->source ? o->source->shards : NULL;
    if (!map || json_object_size(map) != parts->count) return 0;
    json_t *number = json_object();
    bool same = true;
    for (size_t i = 0; same && i < parts->count; i++) {
        const char *file = json_string_value(json_object_get(map, parts->part[i].name));
        if (!(same = file != NULL)) break;
        if (!json_object_get(number, file)) {
            json_object_set_new(number, file, json_integer((json_int_t)json_array_size(names)));
            json_array_append_new(names, json_string(file));
        }
        in[i] = (int)json_integer_value(json_object_get(number, file));
    }
    json_decref(number);
    if (!same) json_array_clear(names);
    return same ? (int)json_array_size(names) : 0;
}

/* Writes n bytes to a file of the folder. */
static inline bool huggingface_put_bytes(const char *folder, const char *name, const void *bytes, size_t n, Error *e) {
    Writer w;
    char *path = huggingface_path(folder, name);
    bool ok = writer_open(&w, path, e);
    if (ok) ok = writer_write(&w, bytes, n, e) && writer_commit(&w, e);
    writer_abort(&w);
    free(path);
    return ok;
}

/* Writes a JSON file and releases root. flags: of json_dumps(), in addition to indentation. */
static inline bool huggingface_put_json(const char *folder, const char *name, json_t *root, size_t flags, Error *e) {
    char *text = json_dumps(root, JSON_INDENT(2) | flags);
    TextBuffer b = {0};
    text_format(&b, "%s\n", text);
    const bool ok = huggingface_put_bytes(folder, name, b.text, b.length, e);
    text_free(&b);
    free(text);
    json_decref(root);
    return ok;
}

/* Writes the index as transformers does; the input's own text if nothing in it changed. */
static inline bool huggingface_put_index(const HuggingfaceOutput *o, const HuggingfaceParts *parts, const int *in,
                                         const json_t *names, bool same, const char *folder, Error *e) {
    const char *const index = "model.safetensors.index.json";
    uint64_t bytes = 0, elements = 0;
    if (same && o->type == SAFETENSORS_TYPE_COUNT)
        return huggingface_put_bytes(folder, index, o->source->index, strlen(o->source->index), e);
    json_t *map = json_object();
    for (size_t i = 0; i < parts->count; i++) {
        bytes += huggingface_part_bytes(o, &parts->part[i]);
        elements += (uint64_t)parts->part[i].rows * parts->part[i].columns;
        json_object_set(map, parts->part[i].name, json_array_get(names, (size_t)in[i]));
    }
    json_t *root = json_pack("{s:{s:I,s:I},s:o}", "metadata", "total_parameters", (json_int_t)elements, "total_size",
                             (json_int_t)bytes, "weight_map", map);
    return huggingface_put_json(folder, index, root, JSON_SORT_KEYS, e);
}

static inline bool huggingface_put_tensors(const Model *m, const HuggingfaceOutput *o, const char *folder, Error *e) {
    const char *prefix = o->source ? o->source->prefix : huggingface_prefix(m->config.family);
    HuggingfaceParts parts = huggingface_parts(&m->config, prefix);
    int *in = (int *)xcalloc(parts.count, sizeof *in);
    json_t *names = json_array();
    bool ok = true;
    qsort(parts.part, parts.count, sizeof *parts.part, huggingface_part_order);
    const int same = huggingface_same_division(o, &parts, in, names);
    const int files = same ? same : huggingface_divide(o, &parts, in, names);
    for (int i = 0; ok && i < files; i++) {
        char *path = huggingface_path(folder, json_string_value(json_array_get(names, (size_t)i)));
        ok = huggingface_put_file(m, o, &parts, in, i, path, e);
        free(path);
    }
    if (ok && (same || files > 1)) ok = huggingface_put_index(o, &parts, in, names, same != 0, folder, e);
    json_decref(names);
    free(in);
    huggingface_parts_free(&parts);
    return ok;
}

/* ---- texts ------------------------------------------------------------------------------------------------------- */

static inline const char *huggingface_type_word(SafetensorsType type) {
    switch (type) {
    case SAFETENSORS_BF16: return "bfloat16";
    case SAFETENSORS_F16: return "float16";
    case SAFETENSORS_F64: return "float64";
    default: return "float32";
    }
}

/* The input's config.json with what changed. */
static inline bool huggingface_changed_config(TextBuffer *b, const ModelConfig *c, const HuggingfaceOutput *o,
                                              Error *e) {
    ModelConfig before;
    char value[80];
    text_string(b, o->source->config);
    json_t *root = huggingface_parse(b->text, b->length, "config.json", e);
    if (!root || !huggingface_config_read(&before, root, "config.json", e)) {
        json_decref(root);
        return false;
    }
    if (c->vocab != before.vocab) {
        snprintf(value, sizeof value, "%d", c->vocab);
        huggingface_config_change(b, "vocab_size", value);
    }
    if (!c->value_head != !before.value_head) {
        char name[64];
        huggingface_architecture_name(c, name);
        snprintf(value, sizeof value, "[\"%s\"]", name);
        huggingface_config_change(b, "architectures", value);
        if (c->value_head) huggingface_config_change(b, "num_labels", "1");
    }
    if (o->type != SAFETENSORS_TYPE_COUNT) {
        const char *key = json_object_get(root, "dtype") ? "dtype" : "torch_dtype";
        const char *now = json_string_value(json_object_get(root, key));
        snprintf(value, sizeof value, "\"%s\"", huggingface_type_word(o->type));
        if (!now || strcmp(now, huggingface_type_word(o->type))) huggingface_config_change(b, key, value);
    }
    json_decref(root);
    return true;
}

static inline bool huggingface_put_config(const ModelConfig *c, const HuggingfaceOutput *o, const char *folder,
                                          Error *e) {
    TextBuffer b = {0};
    bool ok = true;
    if (o->source) ok = huggingface_changed_config(&b, c, o, e);
    else huggingface_config_write(&b, c, huggingface_type_word(o->type), &o->stops);
    ok = ok && huggingface_put_bytes(folder, "config.json", b.text, b.length, e);
    text_free(&b);
    return ok;
}

/* Whether every token of `a` is in `b`. */
static inline bool huggingface_contains(const TokenList *b, const TokenList *a) {
    for (int32_t i = 0; i < a->count; i++) {
        bool found = false;
        for (int32_t k = 0; k < b->count; k++) found |= b->ids[k] == a->ids[i];
        if (!found) return false;
    }
    return true;
}

/* generation_config.json: the input's, with eos_token_id changed if it lacks a token that ends a completion. */
static inline bool huggingface_put_generation(const ModelConfig *c, const HuggingfaceOutput *o, const char *folder,
                                              Error *e) {
    const char *const name = "generation_config.json";
    const HuggingfaceFile *before = huggingface_source_file(o->source, name);
    TextBuffer b = {0}, ids = {0};
    TokenList old = {0};
    bool ok = true;
    json_t *root = huggingface_parse(o->source ? o->source->config : "{}", strlen(o->source ? o->source->config : "{}"),
                                     "config.json", e);
    json_t *generation = before ? huggingface_parse(before->bytes, before->n, name, e) : NULL;
    ok = root && (generation || !before) && huggingface_stops(root, generation, c->vocab, &old, name, e);
    if (ok && before) text_append(&b, before->bytes, before->n);
    if (ok && !huggingface_contains(&old, &o->stops)) {
        if (!before) text_string(&b, "{}\n");
        huggingface_ids_text(&ids, &o->stops);
        huggingface_config_change(&b, "eos_token_id", ids.text);
    }
    if (ok && b.length) ok = huggingface_put_bytes(folder, name, b.text, b.length, e);
    text_free(&b), text_free(&ids);
    token_list_free(&old);
    json_decref(root), json_decref(generation);
    return ok;
}

static inline bool huggingface_make_folder(const char *path, Error *e) {
    return !mkdir(path, 0777) || errno == EEXIST || error_set(e, "%s: cannot create: %s", path, strerror(errno));
}

/* Copies the input's files, except those that are written anew. */
static inline bool huggingface_put_copies(const HuggingfaceOutput *o, bool new_template, const char *folder, Error *e) {
    bool ok = true;
    for (size_t i = 0; ok && o->source && i < o->source->files; i++) {
        const HuggingfaceFile *f = &o->source->file[i];
        if (!strcmp(f->name, "generation_config.json") || (new_template && !strcmp(f->name, "chat_template.jinja")))
            continue;
        const char *slash = strchr(f->name, '/');
        if (slash) {
            char *name = xstrndup(f->name, (size_t)(slash - f->name)), *path = huggingface_path(folder, name);
            ok = huggingface_make_folder(path, e);
            free(name), free(path);
        }
        ok = ok && huggingface_put_bytes(folder, f->name, f->bytes, f->n, e);
    }
    return ok;
}

/* Writes a tokenizer that is not the input's: as tokenizer.llmc, exactly, and for other programs as tokenizer.json and
 * tokenizer_config.json, which are those of the input with the new tokens, if it has them. */
static inline bool huggingface_put_tokenizer(const HuggingfaceOutput *o, const char *folder, Error *e) {
    const HuggingfaceFile *old_json = huggingface_source_file(o->source, "tokenizer.json");
    const HuggingfaceFile *old_config = huggingface_source_file(o->source, "tokenizer_config.json");
    Tokenizer t;
    TextBuffer json = {0}, config = {0};
    if (!huggingface_put_bytes(folder, "tokenizer.llmc", o->tokenizer, o->tokenizer_bytes, e) ||
        !tokenizer_load(&t, o->tokenizer, o->tokenizer_bytes, e))
        return false;
    bool ok =
        old_json ? tokenizer_edit_json(&t, old_json->bytes, old_json->n, &json, e) : tokenizer_to_json(&t, &json, e);
    if (!old_config) tokenizer_to_config(&t, &config);
    else ok = ok && tokenizer_edit_config(&t, old_config->bytes, old_config->n, &config, e);
    ok = ok && huggingface_put_bytes(folder, "tokenizer.json", json.text, json.length, e) &&
         huggingface_put_bytes(folder, "tokenizer_config.json", config.text, config.length, e);
    text_free(&json), text_free(&config);
    tokenizer_free(&t);
    return ok;
}

/* The copies, and the tokenizer and the template if they are not those of the input. */
static inline bool huggingface_put_text_files(const HuggingfaceOutput *o, const char *folder, Error *e) {
    const uint64_t tokenizer = o->tokenizer ? XXH3_64bits(o->tokenizer, o->tokenizer_bytes) : 0;
    const uint64_t template = o->chat_template ? XXH3_64bits(o->chat_template, strlen(o->chat_template)) : 0;
    const bool new_template = template && template != (o->source ? o->source->template_hash : 0);
    const bool new_tokenizer = tokenizer && tokenizer != (o->source ? o->source->tokenizer_hash : 0);
    const bool jinja = new_template && (strstr(o->chat_template, "{%") || strstr(o->chat_template, "{{"));
    if (!huggingface_put_copies(o, jinja, folder, e)) return false;
    if (new_tokenizer && !huggingface_put_tokenizer(o, folder, e)) return false;
    return !new_template || huggingface_put_bytes(folder, jinja ? "chat_template.jinja" : "chat_template.llmc",
                                                  o->chat_template, strlen(o->chat_template), e);
}

/* training_lineage.json and reward_model.json. */
static inline bool huggingface_put_own(const Model *m, const HuggingfaceOutput *o, const char *folder, Error *e) {
    json_t *lineage = (json_t *)o->lineage;
    if (lineage && json_array_size(lineage) &&
        !huggingface_put_json(folder, "training_lineage.json", json_pack("{s:O}", "lineage", lineage),
                              JSON_REAL_PRECISION(17), e))
        return false;
    if (!m->config.value_head) return true;
    float bias;
    model_download(m, m->tensor[TENSOR_valueb].offset, &bias, 1);
    json_t *reward = o->reward ? json_loads(o->reward, 0, NULL) : json_null();
    return huggingface_put_json(folder, "reward_model.json",
                                json_pack("{s:f,s:o}", "bias", (double)bias, "reward", reward ? reward : json_null()),
                                JSON_REAL_PRECISION(17), e);
}

/* ---- the folder -------------------------------------------------------------------------------------------------- */

static inline int huggingface_remove_entry(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    return remove(path);
}

static inline void huggingface_remove_folder(const char *path) {
    nftw(path, huggingface_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* Whether a file belongs to a model's folder, so that a new model replaces it. */
static inline bool huggingface_is_replaced(const char *name) {
    static const char *const ours[] = {"config.json",
                                       "*.safetensors",
                                       "*.safetensors.index.json",
                                       "pytorch_model*.bin",
                                       "pytorch_model.bin.index.json",
                                       "additional_chat_templates",
                                       "training_lineage.json",
                                       "reward_model.json",
                                       "tokenizer.llmc",
                                       "chat_template.llmc"};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (!fnmatch(ours[i], name, 0)) return true;
    return huggingface_copy_pattern(name) != NULL;
}

/* Moves the files of the old folder that are not a model's to the new one, and removes the rest. A folder without
 * config.json is not a model's, so all its files are moved. A file that cannot be moved stays, with its folder. */
static inline void huggingface_retire(const char *old, const char *now) {
    const bool is_model = huggingface_has(old, "config.json");
    DIR *d = opendir(old);
    bool all = d != NULL;
    for (struct dirent *entry; d && (entry = readdir(d));) {
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..") || (is_model && huggingface_is_replaced(name))) continue;
        char *from = huggingface_path(old, name), *to = huggingface_path(now, name);
        if (!access(to, F_OK) || rename(from, to)) all = false;
        free(from), free(to);
    }
    if (d) closedir(d);
    if (all) huggingface_remove_folder(old);
}

/* Gives the complete folder its name. */
static inline bool huggingface_take_place(const char *temporary, const char *path, Error *e) {
    if (access(path, F_OK)) {
        if (!rename(temporary, path)) return true;
        return error_set(e, "%s: cannot rename the temporary folder: %s", path, strerror(errno));
    }
    if (!renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE)) {
        huggingface_retire(temporary, path);
        return true;
    }
    if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP)
        return error_set(e, "%s: cannot replace the folder: %s", path, strerror(errno));
    TextBuffer old = {0}; /* a file system that cannot exchange two names */
    text_format(&old, "%s.old", temporary);
    bool ok = !rename(path, old.text);
    if (ok && rename(temporary, path)) {
        const int error = errno;
        ok = false;
        if (!rename(old.text, path)) errno = error;
    }
    if (ok) huggingface_retire(old.text, path);
    else error_set(e, "%s: cannot replace the folder: %s", path, strerror(errno));
    text_free(&old);
    return ok;
}

/* Checks that a folder can be written under this name, without leaving anything. */
static inline bool huggingface_check_output(const char *path, Error *e) {
    struct stat st;
    char *name = xstrdup(path);
    for (size_t n = strlen(name); n > 1 && name[n - 1] == '/'; n--) name[n - 1] = 0;
    char *slash = strrchr(name, '/'),
         *parent = slash ? xstrndup(name, slash == name ? 1 : (size_t)(slash - name)) : xstrdup(".");
    bool ok = true;
    if (!strcmp(name, "/") || !strcmp(name, ".") || !strcmp(name, ".."))
        ok = error_set(e, "%s: cannot be replaced as a whole; name a folder in it", path);
    else if (!lstat(name, &st) && !S_ISDIR(st.st_mode)) ok = error_set(e, "%s: is not a folder", path);
    else if (access(parent, W_OK | X_OK))
        ok = error_set(e, "%s: cannot write to %s: %s", path, parent, strerror(errno));
    free(name), free(parent);
    return ok;
}

/* Removes a temporary folder whose process has ended. If it was killed after the exchange, the folder may hold files that
 * are not a model's: they are moved first. */
static inline void huggingface_remove_leftover(const char *leftover, const char *path) {
    char *config = huggingface_path(leftover, "config.json");
    io_leftovers(config, false, writer_remove);
    if (!access(config, F_OK)) huggingface_retire(leftover, path);
    else rmdir(leftover);
    free(config);
}

/* Creates a folder from the template `name` of io_temporary() and locks it. Returns its file descriptor, or -1 with
 * errno. */
static inline int huggingface_make_temporary(char *name) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    for (;;) {
        uint8_t random[6];
        if (getentropy(random, sizeof random)) return -1;
        for (int i = 0; i < 6; i++) name[strlen(name) - strlen("XXXXXX.tmp") + (size_t)i] = letters[random[i] % 62];
        if (mkdir(name, 0700)) {
            if (errno == EEXIST) continue;
            return -1;
        }
        const int fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0) return -1;
        while (flock(fd, LOCK_EX) && errno == EINTR) {}
        if (!access(name, F_OK)) return fd;
        close(fd); /* another process has taken it for a leftover before it was locked */
    }
}

static inline bool huggingface_fill(const Model *m, const HuggingfaceOutput *o, const char *folder, Error *e) {
    return huggingface_put_config(&m->config, o, folder, e) && huggingface_put_generation(&m->config, o, folder, e) &&
           huggingface_put_text_files(o, folder, e) && huggingface_put_own(m, o, folder, e) &&
           huggingface_put_tensors(m, o, folder, e);
}

/* Writes the model's folder. */
static inline bool huggingface_save(const Model *m, const HuggingfaceOutput *o, const char *path, Error *e) {
    char *name = xstrdup(path), *temporary;
    int fd = -1;
    for (size_t n = strlen(name); n > 1 && name[n - 1] == '/'; n--) name[n - 1] = 0;
    bool ok = huggingface_can_describe(&m->config, path, e) && huggingface_check_output(path, e);
    if (ok) io_leftovers(name, true, huggingface_remove_leftover);
    temporary = io_temporary(name);
    if (ok && (fd = huggingface_make_temporary(temporary)) < 0) {
        ok = error_set(e, "%s: cannot create a temporary folder: %s", path, strerror(errno));
    } else if (ok) {
        const mode_t mask = umask(0);
        umask(mask);
        chmod(temporary, 0777 & ~mask);
        ok = huggingface_fill(m, o, temporary, e) && huggingface_take_place(temporary, name, e);
        if (!ok) huggingface_remove_folder(temporary);
        else writer_sync_directory(name);
        close(fd);
    }
    free(name), free(temporary);
    return ok;
}

#endif
