/* model_file.h - models in files: weights, and what travels with them.
 *
 * A checkpoint is llm.c's file with a trailer (checkpoint.h). In the trailer: the tokenizer, the chat template, the value
 * head, and the lineage: a JSON array with an entry for each stage that the model went through (stage, parent's hash,
 * options). A training state is a checkpoint too, with Adam's moments and the trainer's counters behind: `generate -c
 * run.state` works, and `--resume run.state` goes on bit for bit.
 *
 *     ModelFile f;
 *     model_load(&model, &f, "sft.bin", NULL, backend, device, true, seed, NULL, &e);
 *     model_save(&model, &f, "out.bin", false, NULL, NULL, &e);
 */
#ifndef LLMC_MODEL_FILE_H
#define LLMC_MODEL_FILE_H

#include "checkpoint.h"
#include "gpt2.h"
#include "optimizer.h"
#include <jansson.h>

typedef struct ModelFile {
    void *tokenizer; /* blob for tokenizer_load(), or NULL */
    size_t tokenizer_bytes;
    char *chat_template; /* or NULL */
    json_t *lineage;     /* array */
    char *trainer;       /* a training state's counters as JSON, or NULL */
    uint64_t hash;       /* of the file that was read; 0 for a new model */
} ModelFile;

enum { MODEL_CHUNK = 1 << 20 }; /* elements that pass through the host at a time */
enum { MODEL_TEXT_LIMIT = 64 << 20 };

static inline void model_file_free(ModelFile *f) {
    free(f->tokenizer), free(f->chat_template), free(f->trainer), json_decref(f->lineage);
    *f = (ModelFile){0};
}

/* Moments: n floats from the file to the device. */
static inline bool model_read_moments(CheckpointReader *r, const GPT2 *m, Floats *to, uint64_t bytes, Error *e) {
    if (bytes != m->parameters * sizeof(float))
        return error_set(e, "%s: optimizer moments of %llu bytes, the model needs %zu", r->in.name,
                         (unsigned long long)bytes, m->parameters * sizeof(float));
    float *host = (float *)xmalloc(MODEL_CHUNK * sizeof *host);
    bool ok = true;
    for (size_t at = 0; ok && at < m->parameters; at += MODEL_CHUNK) {
        const size_t n = m->parameters - at < MODEL_CHUNK ? m->parameters - at : MODEL_CHUNK;
        ok = checkpoint_payload(r, host, n * sizeof *host, "optimizer moments", e);
        if (ok) m->backend->upload(m->device, floats_at(to, at), host, n * sizeof *host);
    }
    free(host);
    return ok;
}

static inline bool model_read_weights(CheckpointReader *r, const GPT2 *m, Error *e) {
    const size_t file = m->tensor[GPT2_FILE_TENSORS].offset;
    float *host = (float *)xmalloc(MODEL_CHUNK * sizeof *host);
    bool ok = true;
    for (size_t at = 0; ok && at < file; at += MODEL_CHUNK) {
        const size_t n = file - at < MODEL_CHUNK ? file - at : MODEL_CHUNK;
        ok = checkpoint_weights(r, host, n, "weights", e);
        if (ok) m->backend->weights_upload(m->device, weights_at(m->backend, m->weights, at), host, n);
    }
    free(host);
    return ok;
}

static inline bool model_read_head(CheckpointReader *r, const GPT2 *m, uint64_t bytes, Error *e) {
    const size_t n = (size_t)m->config.width + 1;
    if (bytes != n * sizeof(float))
        return error_set(e, "%s: value head of %llu bytes, expected %zu", r->in.name, (unsigned long long)bytes,
                         n * sizeof(float));
    float *host = (float *)xmalloc(n * sizeof *host);
    const bool ok = checkpoint_payload(r, host, n * sizeof *host, "value head", e);
    if (ok && m->config.value_head)
        m->backend->weights_upload(m->device, weights_at(m->backend, m->weights, m->tensor[GPT2_valuew].offset), host,
                                   n);
    free(host);
    return ok;
}

static inline bool model_read_lineage(CheckpointReader *r, ModelFile *f, Error *e) {
    char *text = (char *)checkpoint_blob(r, MODEL_TEXT_LIMIT, NULL, "lineage", e);
    if (!text) return false;
    json_t *lineage = json_loads(text, 0, NULL);
    free(text);
    if (!json_is_array(lineage)) {
        json_decref(lineage);
        return error_set(e, "%s: lineage: it is not a JSON array", r->in.name);
    }
    json_decref(f->lineage);
    f->lineage = lineage;
    return true;
}

/* A section in the place of what was read before. */
static inline void *model_read_text(CheckpointReader *r, void *before, size_t *n, const char *what, Error *e) {
    free(before);
    return checkpoint_blob(r, MODEL_TEXT_LIMIT, n, what, e);
}

static inline bool model_read_sections(CheckpointReader *r, GPT2 *m, ModelFile *f, Optimizer *o, bool *head, Error *e) {
    char tag[5];
    uint64_t bytes;
    for (;;) {
        if (!checkpoint_section(r, tag, &bytes, e)) return false;
        if (!tag[0]) return true;
        bool ok = true;
        if (!strcmp(tag, "TOKN"))
            ok = (f->tokenizer = model_read_text(r, f->tokenizer, &f->tokenizer_bytes, "tokenizer", e));
        else if (!strcmp(tag, "CHAT"))
            ok = (f->chat_template = (char *)model_read_text(r, f->chat_template, NULL, "chat template", e));
        else if (!strcmp(tag, "TRNS"))
            ok = (f->trainer = (char *)model_read_text(r, f->trainer, NULL, "trainer state", e));
        else if (!strcmp(tag, "LINE")) ok = model_read_lineage(r, f, e);
        else if (!strcmp(tag, "HEAD")) ok = *head = model_read_head(r, m, bytes, e);
        else if (o && !strcmp(tag, "ADM1")) ok = model_read_moments(r, m, o->m, bytes, e);
        else if (o && !strcmp(tag, "ADM2")) ok = model_read_moments(r, m, o->v, bytes, e);
        if (!ok) return false;
    }
}

/* Loads `spec`: a checkpoint ("-" is standard input), or a descriptor such as d12 for a model with random weights from
 * `seed`; with shape, a new model of that shape (spec may then be NULL). A model with value_head asked for by
 * `value_head` gets a new head where the file has none. gradients: the model will be trained. o: an optimizer to be made
 * for it and filled from a training state's moments, or NULL. On failure nothing is left allocated. */
static inline bool model_load(GPT2 *m, ModelFile *f, const char *spec, const GPT2Config *shape, bool value_head,
                              const Backend *b, Device *d, bool gradients, uint64_t seed, Optimizer *o, Error *e) {
    GPT2Config config;
    bool ok = true;
    *f = (ModelFile){.lineage = json_array()};
    *m = (GPT2){0};
    if (o) *o = (Optimizer){0};
    if (shape || gpt2_config_descriptor(spec, &config, &ok, e)) {
        if (shape) config = *shape;
        config.value_head = value_head;
        ok = ok && gpt2_config_check(&config, shape ? "model shape" : spec, e) &&
             gpt2_new(m, &config, b, d, gradients, e);
        if (ok) gpt2_init(m, seed);
        if (ok && o) ok = optimizer_new(o, m, e);
    } else {
        CheckpointReader r;
        bool head = false;
        if (!checkpoint_open(&r, spec, e)) ok = false;
        else {
            config = r.config;
            config.value_head = value_head;
            /* memory is used as the file delivers: one that promises more than it holds costs nothing */
            ok = gpt2_new(m, &config, b, d, false, e) && model_read_weights(&r, m, e) &&
                 (!gradients || gpt2_new_grads(m, e)) && (!o || optimizer_new(o, m, e));
            if (ok) ok = model_read_sections(&r, m, f, o, &head, e);
            if (ok && value_head && !head) {
                float *host = (float *)xcalloc((size_t)config.width + 1, sizeof *host);
                gpt2_init_tensor(&config, GPT2_valuew, &m->tensor[GPT2_valuew], seed, host);
                b->weights_upload(d, weights_at(b, m->weights, m->tensor[GPT2_valuew].offset), host,
                                  (size_t)config.width + 1);
                free(host);
            }
            f->hash = reader_hash(&r.in);
            checkpoint_close(&r);
        }
    }
    if (ok) return true;
    if (o && o->m) optimizer_free(o, m);
    if (m->backend) gpt2_free(m);
    model_file_free(f);
    return false;
}

static inline bool model_put_floats(CheckpointWriter *w, const GPT2 *m, const char *tag, const Floats *from, Error *e) {
    if (!checkpoint_begin_section(w, tag, m->parameters * sizeof(float), e)) return false;
    float *host = (float *)xmalloc(MODEL_CHUNK * sizeof *host);
    bool ok = true;
    for (size_t at = 0; ok && at < m->parameters; at += MODEL_CHUNK) {
        const size_t n = m->parameters - at < MODEL_CHUNK ? m->parameters - at : MODEL_CHUNK;
        m->backend->download(m->device, host, floats_at(from, at), n * sizeof *host);
        ok = checkpoint_put(w, host, n * sizeof *host, e);
    }
    free(host);
    return ok;
}

static inline bool model_put_text(CheckpointWriter *w, const char *tag, const void *text, size_t bytes, Error *e) {
    return !text || (checkpoint_begin_section(w, tag, bytes, e) && checkpoint_put(w, text, bytes, e));
}

/* Writes a checkpoint; with an optimizer and the trainer's counters as JSON text, a training state. bf16: llm.c's
 * version 5. Nothing appears under `path` before all of it is on disk. */
static inline bool model_save(const GPT2 *m, const ModelFile *f, const char *path, bool bf16, const Optimizer *o,
                              const char *trainer, Error *e) {
    CheckpointWriter w;
    if (!checkpoint_create(&w, path, &m->config, bf16, e)) return false;
    const size_t file = m->tensor[GPT2_FILE_TENSORS].offset;
    float *host = (float *)xmalloc(MODEL_CHUNK * sizeof *host);
    bool ok = true;
    for (size_t at = 0; ok && at < file; at += MODEL_CHUNK) {
        const size_t n = file - at < MODEL_CHUNK ? file - at : MODEL_CHUNK;
        m->backend->weights_download(m->device, host, weights_at(m->backend, m->weights, at), n);
        ok = checkpoint_put_weights(&w, host, n, e);
    }
    free(host);
    char *lineage = json_dumps(f->lineage, JSON_COMPACT | JSON_SORT_KEYS);
    ok = ok && model_put_text(&w, "TOKN", f->tokenizer, f->tokenizer_bytes, e) &&
         model_put_text(&w, "CHAT", f->chat_template, f->chat_template ? strlen(f->chat_template) : 0, e) &&
         model_put_text(&w, "LINE", lineage, lineage ? strlen(lineage) : 0, e);
    free(lineage);
    if (ok && m->config.value_head) {
        const size_t n = (size_t)m->config.width + 1;
        host = (float *)xmalloc(n * sizeof *host);
        m->backend->weights_download(m->device, host, weights_at(m->backend, m->weights, m->tensor[GPT2_valuew].offset),
                                     n);
        ok = model_put_text(&w, "HEAD", host, n * sizeof *host, e);
        free(host);
    }
    if (o) ok = ok && model_put_floats(&w, m, "ADM1", o->m, e) && model_put_floats(&w, m, "ADM2", o->v, e);
    ok = ok && model_put_text(&w, "TRNS", trainer, trainer ? strlen(trainer) : 0, e);
    if (ok && checkpoint_commit(&w, e)) return true;
    if (!ok) checkpoint_abort(&w);
    return false;
}

#endif
