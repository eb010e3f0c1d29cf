/* model_single.h - a model in one safetensors file, with its texts, and a training state.
 *
 * The tensors have the names, shapes and order of Hugging Face's files (huggingface_names.h), so that any reader of
 * safetensors opens the file. What a folder holds in further files is in the same file:
 *
 *   __metadata__            "format": "pt"; "llmc.version": "1"; "llmc.config": the text of config.json; "llmc.prefix": of
 *                           the tensors' names; "llmc.lineage", "llmc.stops": JSON; if there is one, "llmc.chat_template",
 *                           "llmc.reward", "llmc.trainer" (a training state's counters), and for a model that came from a
 *                           folder "llmc.source": what an output folder needs of it, JSON, and "llmc.index"
 *   llmc.file.NAME          U8: a file of that folder, byte for byte
 *   llmc.tokenizer          U8: the blob of the tokenizer (text/tokenizer.h)
 *   llmc.valueb             F32 (1): the bias of the value head, whose weights are score.weight
 *   llmc.adam1.II.T.LLLL    F32: Adam's first moments of layer LLLL of tensor T, number II of tensors.h's table; a training
 *   llmc.adam2.II.T.LLLL    state has these, the second moments and, if the device keeps narrower weights, the float32
 *   llmc.master.II.T.LLLL   master weights, each of the tensors that are trained
 *   llmc.lora.II.T.LLLL     F32: a training state's low-rank adapters, of the shape in "llmc.lora", JSON; the weights are
 *                           those without them. A model that is not a state has the sum in its weights
 *   ~xxh3                   U8 (8): the XXH3-64 of all bytes before it; it is the last array of the file
 *
 * The file is written and read without a seek, so it can be a pipe, and compressed. A regular file that is not compressed
 * is mapped into memory.
 */
#ifndef LLMC_MODEL_MODEL_SINGLE_H
#define LLMC_MODEL_MODEL_SINGLE_H

#include "../base/error.h"            /* Error, error_set, xstrdup, xcalloc, ... */
#include "../base/io.h"               /* Reader, IO_BUFFER, IO_PIECE, XXH3_64bits, ... */
#include "../base/text.h"             /* text_free, TextBuffer, text_format, text_string */
#include "backend.h"                  /* Floats, floats_at */
#include "config.h"                   /* LoraConfig */
#include "huggingface.h"              /* Huggingface, HuggingfaceSource, huggingface_ends, huggingface_find, ... */
#include "huggingface_config.h"       /* huggingface_integer, huggingface_ids, huggingface_number */
#include "huggingface_config_write.h" /* huggingface_can_describe, huggingface_config_write */
#include "huggingface_names.h"        /* HuggingfaceParts, HuggingfacePart, huggingface_parts, ... */
#include "huggingface_save.h"         /* HuggingfaceOutput, huggingface_changed_config, huggingface_find_part, ... */
#include "lora.h"                     /* lora_merged, model_trained_first */
#include "model.h"                    /* Model, model_download, ModelChunk, model_each_chunk, ... */
#include "optimizer.h"                /* Optimizer */
#include "safetensors.h"              /* safetensors_add, SAFETENSORS_F32, SafeTensor, SafetensorsWriter, ... */
#include "tensors.h"                  /* TENSOR_COUNT, FIRST_LORA_TENSOR, tensor_trained, TENSOR_valueb */
#include <jansson.h>

#define SINGLE_SUM  "~xxh3"
#define SINGLE_OURS "llmc."

/* Whether an output of this name is such a file: .safetensors, or .safetensors.zst. */
static inline bool single_is_output(const char *path) {
    return huggingface_ends(path, ".safetensors") || huggingface_ends(path, ".safetensors.zst");
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* One of the arrays of a training state. */
typedef struct SingleArray {
    const char *tag;
    const Floats *from;
} SingleArray;

/* Fills in the arrays in the order of their names, which is that of model_save_beside(). Returns their number. */
static inline int single_arrays(const Optimizer *o, SingleArray array[3]) {
    if (!o) return 0;
    array[0] = (SingleArray){"llmc.adam1", o->m};
    array[1] = (SingleArray){"llmc.adam2", o->v};
    array[2] = (SingleArray){"llmc.master", o->master};
    return o->master ? 3 : 2;
}

static inline void single_array_name(char name[96], const char *tag, int tensor, const char *tensor_name, int layer) {
    snprintf(name, 96, "%s.%02d.%s.%04d", tag, tensor, tensor_name, layer);
}

/* Announces all arrays. parts: those of the model. */
static inline void single_announce(SafetensorsWriter *w, const Model *m, const HuggingfaceOutput *o,
                                   const HuggingfaceParts *parts, const Optimizer *optimizer) {
    const SafetensorsType type = o->type == SAFETENSORS_TYPE_COUNT ? SAFETENSORS_F32 : o->type;
    SingleArray array[3];
    char name[96];
    for (size_t i = 0; i < parts->count; i++) {
        uint64_t shape[2];
        const int dims = huggingface_shape(&parts->part[i], shape);
        safetensors_add(w, parts->part[i].name, type, dims, shape);
    }
    for (int k = single_arrays(optimizer, array) - 1; k >= 0; k--)
        for (int i = 0; i < TENSOR_COUNT; i++)
            for (int l = 0; tensor_trained(&m->tensor[i]) && l < (int)m->tensor[i].layers; l++) {
                single_array_name(name, array[k].tag, i, m->tensor[i].name, l);
                safetensors_add(w, name, SAFETENSORS_F32, 2,
                                (const uint64_t[]){m->tensor[i].rows, m->tensor[i].columns});
            }
    for (int i = FIRST_LORA_TENSOR; optimizer && i < TENSOR_COUNT; i++)
        for (int l = 0; m->tensor[i].size && l < (int)m->tensor[i].layers; l++) {
            single_array_name(name, "llmc.lora", i, m->tensor[i].name, l);
            safetensors_add(w, name, SAFETENSORS_F32, 2, (const uint64_t[]){m->tensor[i].rows, m->tensor[i].columns});
        }
    if (m->config.value_head) safetensors_add(w, "llmc.valueb", SAFETENSORS_F32, 1, (const uint64_t[]){1});
    for (size_t i = 0; o->source && i < o->source->files; i++) {
        TextBuffer file = {0};
        text_format(&file, "llmc.file.%s", o->source->file[i].name);
        safetensors_add(w, file.text, SAFETENSORS_U8, 1, (const uint64_t[]){o->source->file[i].n});
        text_free(&file);
    }
    if (o->tokenizer) safetensors_add(w, "llmc.tokenizer", SAFETENSORS_U8, 1, (const uint64_t[]){o->tokenizer_bytes});
    safetensors_add(w, SINGLE_SUM, SAFETENSORS_U8, 1, (const uint64_t[]){8});
}

/* Sets a text of the metadata; NULL: none. */
static inline bool single_set(json_t *metadata, const char *key, const char *text, const char *path, Error *e) {
    if (!text || !json_object_set_new(metadata, key, json_string(text))) return true;
    return error_set(e, "%s: %s is not UTF-8, which this format needs", path, key);
}

/* What an output folder needs of the folder that the model came from, but its files. */
static inline char *single_source_text(const HuggingfaceSource *s) {
    json_t *root = json_object();
    char hash[24];
    json_object_set(root, "types", s->types);
    if (s->shards) json_object_set(root, "shards", s->shards);
    if (s->metadata) json_object_set(root, "metadata", s->metadata);
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)s->tokenizer_hash);
    json_object_set_new(root, "tokenizer", json_string(hash));
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)s->template_hash);
    json_object_set_new(root, "template", json_string(hash));
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

/* The metadata, or NULL. */
static inline json_t *single_metadata(const Model *m, const HuggingfaceOutput *o, const char *prefix,
                                      const char *trainer, const char *path, Error *e) {
    json_t *metadata = json_pack("{s:s,s:s}", "format", "pt", "llmc.version", "1");
    HuggingfaceOutput same = *o;
    TextBuffer config = {0}, stops = {0};
    char *lineage = o->lineage ? json_dumps(o->lineage, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    char *source = o->source ? single_source_text(o->source) : NULL;
    char lora[100];
    snprintf(lora, sizeof lora, "{\"rank\":%d,\"targets\":%d,\"scale\":%.9g}", m->config.lora.rank,
             m->config.lora.targets, (double)m->config.lora.scale);
    bool ok = true;
    same.type = SAFETENSORS_TYPE_COUNT; /* config.json keeps the type of the folder */
    if (o->source) ok = huggingface_changed_config(&config, &m->config, &same, e);
    else huggingface_config_write(&config, &m->config, "float32", &o->stops);
    text_string(&stops, "[");
    for (int32_t i = 0; i < o->stops.count; i++) text_format(&stops, i ? ",%d" : "%d", o->stops.ids[i]);
    text_string(&stops, "]");
    ok = ok && single_set(metadata, "llmc.config", config.text, path, e) &&
         single_set(metadata, "llmc.prefix", prefix, path, e) &&
         single_set(metadata, "llmc.lineage", lineage, path, e) &&
         single_set(metadata, "llmc.stops", stops.text, path, e) &&
         single_set(metadata, "llmc.chat_template", o->chat_template, path, e) &&
         single_set(metadata, "llmc.reward", o->reward, path, e) &&
         single_set(metadata, "llmc.trainer", trainer, path, e) &&
         single_set(metadata, "llmc.lora", trainer ? lora : NULL, path, e) &&
         single_set(metadata, "llmc.source", source, path, e) &&
         (!o->source || single_set(metadata, "llmc.index", o->source->index, path, e));
    free(lineage), free(source);
    text_free(&config), text_free(&stops);
    if (ok) return metadata;
    json_decref(metadata);
    return NULL;
}

/* Writes layer l of tensor i of an array. */
static inline bool single_put_layer(SafetensorsWriter *w, const Model *m, const Optimizer *o, const Floats *array,
                                    int i, int l, Error *e) {
    const size_t n = m->tensor[i].rows * m->tensor[i].columns;
    const Floats *from = floats_at((Floats *)array, m->tensor[i].offset - model_trained_first(m) + (size_t)l * n);
    ModelChunk c = {0};
    bool ok = true;
    if (o->sharded) {
        ok = o->collect(o->collect_context, array, i, l, e);
        from = model_grad(m, i, l);
    }
    while (ok && model_each_chunk(&c, n)) {
        m->backend->download(m->device, c.host, floats_at((Floats *)from, c.at), c.n * sizeof *c.host);
        ok = safetensors_put(w, c.host, c.n * sizeof *c.host, e);
    }
    free(c.host);
    return ok;
}

/* Writes an array of a training state that begins at w->tensor[*at], and sets *at to its last tensor. */
static inline bool single_put_array(SafetensorsWriter *w, const Model *m, const Optimizer *o, const SingleArray *array,
                                    size_t *at, Error *e) {
    bool ok = true;
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (int l = 0; ok && tensor_trained(&m->tensor[i]) && l < (int)m->tensor[i].layers; l++) {
            char name[96];
            single_array_name(name, array->tag, i, m->tensor[i].name, l);
            assert(!strcmp(w->tensor[*at].name, name)); /* the order of the names is that of the table */
            ok = single_put_layer(w, m, o, array->from, i, l, e);
            ++*at;
        }
    --*at;
    if (o->sharded) model_zero_grads(m);
    return ok;
}

/* Writes the adapters, which begin at w->tensor[*at], and sets *at to their last tensor. */
static inline bool single_put_adapters(SafetensorsWriter *w, const Model *m, size_t *at, Error *e) {
    bool ok = true;
    for (int i = FIRST_LORA_TENSOR; i < TENSOR_COUNT; i++) {
        ModelChunk c = {0};
        while (ok && model_each_chunk(&c, m->tensor[i].size)) {
            model_download(m, m->tensor[i].offset + c.at, c.host, c.n);
            ok = safetensors_put(w, c.host, c.n * sizeof *c.host, e);
        }
        free(c.host);
        *at += m->tensor[i].size ? m->tensor[i].layers : 0;
    }
    --*at;
    return ok;
}

/* Writes the data of w->tensor[*at], or of several. */
static inline bool single_put(SafetensorsWriter *w, const Model *m, const HuggingfaceOutput *o,
                              const HuggingfaceParts *parts, const Optimizer *optimizer, size_t *at, Error *e) {
    const SafeTensor *t = &w->tensor[*at];
    const HuggingfacePart *part = huggingface_find_part(parts, t->name);
    SingleArray array[3];
    if (part) return huggingface_put_part(w, m, part, t->type, optimizer ? model_download : lora_merged, e);
    for (int k = single_arrays(optimizer, array) - 1; k >= 0; k--)
        if (!strncmp(t->name, array[k].tag, strlen(array[k].tag)))
            return single_put_array(w, m, optimizer, &array[k], at, e);
    if (!strncmp(t->name, "llmc.lora.", 10)) return single_put_adapters(w, m, at, e);
    if (!strcmp(t->name, "llmc.valueb")) {
        float bias;
        model_download(m, m->tensor[TENSOR_valueb].offset, &bias, 1);
        return safetensors_put(w, &bias, sizeof bias, e);
    }
    if (!strcmp(t->name, "llmc.tokenizer")) return safetensors_put(w, o->tokenizer, o->tokenizer_bytes, e);
    if (!strcmp(t->name, SINGLE_SUM)) {
        const uint64_t hash = writer_hash(&w->out);
        return safetensors_put(w, &hash, sizeof hash, e);
    }
    const HuggingfaceFile *f = huggingface_source_file(o->source, t->name + strlen("llmc.file."));
    return safetensors_put(w, f->bytes, f->n, e);
}

/* Writes the model, and with an optimizer and the trainer's counters (JSON text) a training state. o->type: of the
 * model's tensors; SAFETENSORS_TYPE_COUNT: float32. */
static inline bool single_save(const Model *m, const HuggingfaceOutput *o, const char *path, const Optimizer *optimizer,
                               const char *trainer, Error *e) {
    SafetensorsWriter w = {0};
    const char *prefix = o->source ? o->source->prefix : huggingface_prefix(m->config.family);
    if (!huggingface_can_describe(&m->config, path, e)) return false;
    json_t *metadata = single_metadata(m, o, prefix, trainer, path, e);
    if (!metadata) return false;
    HuggingfaceParts parts = huggingface_parts(&m->config, prefix);
    qsort(parts.part, parts.count, sizeof *parts.part, huggingface_part_order);
    single_announce(&w, m, o, &parts, optimizer);
    bool ok = safetensors_begin(&w, path, metadata, e);
    for (size_t i = 0; ok && i < w.count; i++) ok = single_put(&w, m, o, &parts, optimizer, &i, e);
    ok = ok && safetensors_commit(&w, e);
    safetensors_abort(&w);
    huggingface_parts_free(&parts);
    json_decref(metadata);
    return ok;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* Makes at least n bytes of the source available in r->in, if it has them. */
static inline bool single_peek(Reader *r, size_t n, Error *e) {
    while (r->fd >= 0 && r->end - r->at < n && !r->drained) {
        const ssize_t got = reader_raw(r, r->buffer + r->end, IO_BUFFER - r->end, e);
        if (got < 0) return false;
        r->end += (size_t)got;
    }
    return true;
}

/* Sets *is to whether a new reader's bytes begin a safetensors file. Reads none of them. */
static inline bool single_begins(Reader *r, bool *is, Error *e) {
    uint8_t first[9] = {0};
    uint64_t n;
    *is = false;
    if (!single_peek(r, r->zstd ? 4096 : sizeof first, e)) return false;
    if (r->zstd) {
        ZSTD_DStream *z = (ZSTD_DStream *)checked_object(ZSTD_createDStream(), "a zstd decompressor");
        ZSTD_outBuffer out = {first, sizeof first, 0};
        ZSTD_inBuffer in = {r->in, r->end, r->at};
        for (size_t before = ~(size_t)0; out.pos < out.size && before != in.pos;) {
            before = in.pos;
            if (ZSTD_isError(ZSTD_decompressStream(z, &out, &in))) break;
        }
        ZSTD_freeDStream(z);
    } else memcpy(first, r->in + r->at, r->end - r->at < sizeof first ? r->end - r->at : sizeof first);
    memcpy(&n, first, 8);
    *is = n >= 2 && n <= SAFETENSORS_HEADER_MAX && first[8] == '{';
    return true;
}

/* Reads the rest of the source into new memory. */
static inline uint8_t *single_rest(Reader *r, size_t *n, Error *e) {
    size_t capacity = IO_PIECE;
    uint8_t *bytes = (uint8_t *)xmalloc(capacity);
    bool failed = false;
    *n = 0;
    for (;;) {
        *n += reader_full(r, bytes + *n, capacity - *n, &failed, e);
        if (*n < capacity || failed) break;
        capacity *= 2;
        bytes = (uint8_t *)xrealloc(bytes, capacity, 1);
    }
    if (!failed) return bytes;
    free(bytes);
    return NULL;
}

static inline const char *single_text(const Huggingface *h, const char *key) {
    return json_string_value(json_object_get(h->file[0].metadata, key));
}

/* Parses a JSON text of the metadata; NULL: it is not valid. */
static inline json_t *single_json(const Huggingface *h, const char *key, Error *e) {
    const char *text = single_text(h, key);
    json_t *root = text ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : NULL;
    if (!root) error_set(e, "%s: __metadata__: %s is not JSON", h->path, key);
    return root;
}

/* Reads the shape of a training state's adapters; rank 0: it has none. */
static inline bool single_lora(const Huggingface *h, LoraConfig *lora, Error *e) {
    *lora = (LoraConfig){0};
    if (!h->files || !single_text(h, "llmc.lora")) return true;
    json_t *root = single_json(h, "llmc.lora", e);
    double scale = 0;
    const bool ok = root && huggingface_integer(root, "rank", 0, &lora->rank, h->path, e) &&
                    huggingface_integer(root, "targets", 0, &lora->targets, h->path, e) &&
                    (!lora->rank || huggingface_number(root, "scale", NAN, &scale, h->path, e));
    lora->scale = (float)scale;
    if (!lora->rank) *lora = (LoraConfig){0};
    json_decref(root);
    return ok;
}

/* Layer l of tensor i in an array of a training state, which has n elements; NULL: the file lacks it. */
static inline const SafeTensor *single_layer(const Huggingface *h, const char *tag, int i, const char *tensor_name,
                                             int l, size_t n, Error *e) {
    char name[96];
    single_array_name(name, tag, i, tensor_name, l);
    const SafeTensor *t = huggingface_find(h, name);
    if (t && t->type == SAFETENSORS_F32 && t->elements == n) return t;
    error_set(e, "%s: %s is missing or has another size than the model needs", h->path, name);
    return NULL;
}

/* Whether the file has arrays of this tag. */
static inline bool single_has(const Huggingface *h, const char *tag) {
    for (size_t i = 0; i < h->file[0].count; i++)
        if (!strncmp(h->file[0].tensor[i].name, tag, strlen(tag))) return true;
    return false;
}

/* Reads "llmc.source". */
static inline bool single_read_source(Huggingface *h, Error *e) {
    json_t *root = single_json(h, "llmc.source", e);
    if (!root) return false;
    HuggingfaceSource *s = h->source;
    const json_t *types = json_object_get(root, "types");
    const char *tokenizer = json_string_value(json_object_get(root, "tokenizer"));
    const char *template = json_string_value(json_object_get(root, "template")), *key;
    json_t *value;
    bool ok = json_is_object(types);
    json_object_foreach((json_t *)types, key, value) {
        const json_int_t type = json_is_integer(value) ? json_integer_value(value) : -1;
        ok = ok && type >= 0 && type < SAFETENSORS_TYPE_COUNT && safetensors_type_is_float((SafetensorsType)type);
    }
    if (ok) {
        json_decref(s->types);
        s->types = json_incref((json_t *)types);
        s->shards = json_incref(json_object_get(root, "shards"));
        s->metadata = json_incref(json_object_get(root, "metadata"));
        s->tokenizer_hash = tokenizer ? strtoull(tokenizer, NULL, 16) : 0;
        s->template_hash = template ? strtoull(template, NULL, 16) : 0;
        if (single_text(h, "llmc.index")) s->index = xstrdup(single_text(h, "llmc.index"));
        ok = (!s->shards || (json_is_object(s->shards) && s->index)) && (!s->metadata || json_is_object(s->metadata));
    }
    json_decref(root);
    return ok || error_set(e, "%s: __metadata__: llmc.source is not what this program writes", h->path);
}

/* Whether a name from the file can be that of a file in an output folder. */
static inline bool single_is_name(const char *name) {
    const char *slash = strchr(name, '/');
    if (slash) return !strncmp(name, "additional_chat_templates/", 26) && !strchr(slash + 1, '/') && slash[1] != '.';
    return huggingface_is_copied(name);
}

/* Reads the arrays of bytes. */
static inline bool single_read_bytes(Huggingface *h, Error *e) {
    for (size_t i = 0; i < h->file[0].count; i++) {
        const SafeTensor *t = &h->file[0].tensor[i];
        if (t->type != SAFETENSORS_U8 || strncmp(t->name, SINGLE_OURS, strlen(SINGLE_OURS))) continue;
        const size_t n = (size_t)t->elements;
        const bool tokenizer = !strcmp(t->name, "llmc.tokenizer"), file = !strncmp(t->name, "llmc.file.", 10);
        if (!tokenizer && (!file || !single_is_name(t->name + 10)))
            return error_set(e, "%s: %.200s is not what this program writes", h->path, t->name);
        char *bytes = (char *)xmalloc(n + 1);
        memcpy(bytes, t->data, n);
        bytes[n] = 0;
        if (file) huggingface_source_add(h->source, t->name + 10, bytes, n);
        else {
            h->tokenizer = bytes;
            h->tokenizer_bytes = n;
        }
    }
    return true;
}

/* Reads the texts of the metadata. */
static inline bool single_read_texts(Huggingface *h, Error *e) {
    const char *template = single_text(h, "llmc.chat_template"), *reward = single_text(h, "llmc.reward");
    const char *trainer = single_text(h, "llmc.trainer");
    const SafeTensor *bias = huggingface_find(h, "llmc.valueb");
    if (template) h->chat_template = xstrdup(template);
    if (reward) h->reward = xstrdup(reward);
    if (trainer) h->trainer = xstrdup(trainer);
    if (bias && bias->elements == 1 && bias->type == SAFETENSORS_F32) safetensors_floats(bias, 0, &h->bias, 1);
    if (single_text(h, "llmc.lineage")) {
        h->lineage = single_json(h, "llmc.lineage", e);
        if (!json_is_array(h->lineage)) return error_set(e, "%s: lineage is not a JSON array", h->path);
    }
    json_t *stops = single_json(h, "llmc.stops", e), *root = stops ? json_pack("{s:o}", "stops", stops) : NULL;
    const bool ok = root && huggingface_ids(root, "stops", h->config.vocab, &h->stops, h->path, e);
    json_decref(root);
    return ok;
}

/* Checks the last array, the checksum of all bytes before it. */
static inline bool single_check_sum(const Huggingface *h, Error *e) {
    const Safetensors *s = &h->file[0];
    const SafeTensor *t = s->count ? &s->tensor[s->count - 1] : NULL;
    uint64_t stored;
    if (!t || strcmp(t->name, SINGLE_SUM) || t->end - t->begin != 8)
        return error_set(e, "%s: its last array is not the checksum " SINGLE_SUM, h->path);
    const uint64_t hash = XXH3_64bits(s->file, s->file_bytes - 8);
    memcpy(&stored, t->data, 8);
    return hash == stored || error_set(e, "%s: checksum is %016llx, expected %016llx: the file is damaged", h->path,
                                       (unsigned long long)hash, (unsigned long long)stored);
}

/* Reads h->file[0]. */
static inline bool single_read(Huggingface *h, Error *e) {
    const char *config = single_text(h, "llmc.config"), *version = single_text(h, "llmc.version");
    if (!config || !version)
        return error_set(e, "%s: has no configuration: it is one file of a model's folder; give the folder", h->path);
    if (strcmp(version, "1")) return error_set(e, "%s: file of version %.20s, expected 1", h->path, version);
    if (!single_check_sum(h, e)) return false;
    h->source->config = xstrdup(config);
    json_t *root = huggingface_read_config(h, h->path, strlen(config), e);
    if (!root) return false;
    json_decref(root);
    if (!huggingface_match(h, SINGLE_OURS, e) || !single_read_bytes(h, e) || !single_read_texts(h, e)) return false;
    return !single_text(h, "llmc.source") || single_read_source(h, e);
}

/* Opens the file of a new reader that begins like one. path: its name; closes the reader. A Huggingface without
 * `source` is that of a model that did not come from a folder. On failure nothing stays open. */
static inline bool single_open(Huggingface *h, const char *path, Reader *r, Error *e) {
    size_t n;
    const bool map = r->fd >= 0 && r->unread >= 0 && !r->zstd && strcmp(path, "-");
    *h = (Huggingface){.path = xstrdup(r->name)};
    h->source = (HuggingfaceSource *)xcalloc(1, sizeof *h->source);
    h->file = (Safetensors *)xcalloc(1, sizeof *h->file);
    bool ok = true;
    if (map) ok = safetensors_open(&h->file[0], path, e);
    else if ((ok = (h->memory = single_rest(r, &n, e)) != NULL))
        ok = safetensors_memory(&h->file[0], h->path, h->memory, n, e);
    reader_close(r);
    h->files = ok;
    ok = ok && single_read(h, e);
    if (!ok) huggingface_close(h);
    return ok;
}

#endif
