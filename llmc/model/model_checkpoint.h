/* model_checkpoint.h - models in llm.c's files (checkpoint.h): GPT-2 with the tokenizer, the chat template, the value head
 * and the lineage in the trailer.
 *
 *     if (!model_save_checkpoint(&model, &file, "out.bin", false, &e)) return false;
 */
#ifndef LLMC_MODEL_MODEL_CHECKPOINT_H
#define LLMC_MODEL_MODEL_CHECKPOINT_H

#include "../base/error.h" /* Error, error_set, xmalloc */
#include "../base/io.h"    /* Reader, reader_hash */
#include "backend.h"       /* Backend, Device */
#include "checkpoint.h"    /* CheckpointReader, CheckpointWriter, checkpoint_blob, checkpoint_close, ... */
#include "config.h"        /* ModelConfig */
#include "lora.h"          /* lora_merged */
#include "model.h"         /* Model, ModelChunk, model_each_chunk, model_download, ... */
#include "model_load.h"    /* ModelFile, model_check_weights, model_put_weights, ModelLoad, ... */
#include "optimizer.h"     /* Optimizer, optimizer_new */
#include "tensors.h"       /* TENSOR_valuew, gpt2_file_elements */

#include <jansson.h>

enum { MODEL_TEXT_LIMIT = 64 << 20 }; /* bytes of a text section */

/* ---- loading ----------------------------------------------------------------------------------------------------- */

static inline bool model_read_weights(CheckpointReader *r, const Model *m, const Optimizer *o, Error *e) {
    ModelChunk c = {0};
    bool ok = true;
    while (ok && model_each_chunk(&c, gpt2_file_elements(&m->config))) {
        ok = checkpoint_weights(r, c.host, c.n, "weights", e) &&
             model_check_weights(m, r->in.name, c.at, c.host, c.n, e);
        if (ok) model_put_weights(m, o, c.at, c.host, c.n);
    }
    free(c.host);
    return ok;
}

static inline bool model_read_head(CheckpointReader *r, const Model *m, const Optimizer *o, uint64_t bytes, Error *e) {
    const size_t n = (size_t)m->config.width + 1;
    if (bytes != n * sizeof(float))
        return error_set(e, "%s: value head of %llu bytes, expected %zu", r->in.name, (unsigned long long)bytes,
                         n * sizeof(float));
    float *host = (float *)xmalloc(n * sizeof *host);
    const bool ok = checkpoint_payload(r, host, n * sizeof *host, "value head", e) &&
                    model_check_weights(m, r->in.name, m->tensor[TENSOR_valuew].offset, host, n, e);
    if (ok && m->config.value_head) model_put_weights(m, o, m->tensor[TENSOR_valuew].offset, host, n);
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
        return error_set(e, "%s: lineage is not a JSON array", r->in.name);
    }
    json_decref(f->lineage);
    f->lineage = lineage;
    return true;
}

/* Reads a text section, which replaces an earlier one with the same tag. */
static inline void *model_read_text(CheckpointReader *r, void *before, size_t *n, const char *what, Error *e) {
    free(before);
    return checkpoint_blob(r, MODEL_TEXT_LIMIT, n, what, e);
}

/* Reads the sections after the weights. m: NULL to read texts only. */
static inline bool model_read_sections(CheckpointReader *r, const Model *m, ModelFile *f, const Optimizer *o,
                                       bool *head, Error *e) {
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
        else if (!strcmp(tag, "RNRM"))
            ok = (f->reward = (char *)model_read_text(r, f->reward, NULL, "reward normalisation", e));
        else if (!strcmp(tag, "LINE")) ok = model_read_lineage(r, f, e);
        else if (m && !strcmp(tag, "HEAD")) ok = *head = model_read_head(r, m, o, bytes, e);
        if (!ok) return false;
    }
}

/* Reads the texts of the file at the start of in, which is closed in any case. */
static inline bool model_checkpoint_texts(ModelFile *f, Reader *in, Error *e) {
    CheckpointReader r = {.in = *in};
    bool head = false, ok = checkpoint_start(&r, e);
    ModelChunk c = {0};
    while (ok && model_each_chunk(&c, gpt2_file_elements(&r.config)))
        ok = checkpoint_weights(&r, c.host, c.n, "weights", e);
    if (!ok) free(c.host);
    ok = ok && model_read_sections(&r, NULL, f, NULL, &head, e);
    checkpoint_close(&r);
    return ok;
}

/* Loads the file at the start of in, which is closed in any case. Memory is allocated as the file is read: a truncated
 * file fails before the rest is allocated. Masters get the weights in full precision, so they are created before the
 * weights are read. */
static inline bool model_load_checkpoint(Model *m, ModelFile *f, Reader *in, const ModelLoad *how, const Backend *b,
                                         Device *d, Optimizer *o, Error *e) {
    CheckpointReader r = {.in = *in};
    bool head = false;
    bool ok = checkpoint_start(&r, e);
    ModelConfig config = r.config;
    const bool masters = o && b->weight_size < sizeof(float);
    ok = ok && model_make(m, &config, how, NULL, b, d, e) && (!masters || optimizer_new(o, m, e)) &&
         model_read_weights(&r, m, o, e) && (!how->gradients || model_new_grads(m, e)) &&
         (!o || masters || optimizer_new(o, m, e)) && model_load_lora(m, o, how, e);
    if (ok) ok = model_read_sections(&r, m, f, o, &head, e);
    if (ok && how->value_head && !head) model_new_head(m, o, how->seed);
    f->hash = reader_hash(&r.in);
    f->head = head;
    checkpoint_close(&r);
    return ok;
}

/* ---- saving ------------------------------------------------------------------------------------------------------ */

static inline bool model_put_text(CheckpointWriter *w, const char *tag, const void *text, size_t bytes, Error *e) {
    return !text || (checkpoint_begin_section(w, tag, bytes, e) && checkpoint_put(w, text, bytes, e));
}

/* Writes a model, with its adapters added to the weights. bf16: llm.c's version 5, else float32. */
static inline bool model_save_checkpoint(const Model *m, const ModelFile *f, const char *path, bool bf16, Error *e) {
    CheckpointWriter w;
    if (!checkpoint_create(&w, path, &m->config, bf16, e)) return false;
    ModelChunk c = {0};
    bool ok = true;
    while (ok && model_each_chunk(&c, gpt2_file_elements(&m->config))) {
        lora_merged(m, c.at, c.host, c.n);
        ok = checkpoint_put_weights(&w, c.host, c.n, e);
    }
    free(c.host);
    char *lineage = json_dumps(f->lineage, JSON_COMPACT | JSON_SORT_KEYS);
    ok = ok && model_put_text(&w, "TOKN", f->tokenizer, f->tokenizer_bytes, e) &&
         model_put_text(&w, "CHAT", f->chat_template, f->chat_template ? strlen(f->chat_template) : 0, e) &&
         model_put_text(&w, "LINE", lineage, lineage ? strlen(lineage) : 0, e);
    free(lineage);
    if (ok && m->config.value_head) {
        const size_t n = (size_t)m->config.width + 1;
        float *host = (float *)xmalloc(n * sizeof *host);
        model_download(m, m->tensor[TENSOR_valuew].offset, host, n);
        ok = model_put_text(&w, "HEAD", host, n * sizeof *host, e) &&
             model_put_text(&w, "RNRM", f->reward, f->reward ? strlen(f->reward) : 0, e);
        free(host);
    }
    if (ok && checkpoint_commit(&w, e)) return true;
    if (!ok) checkpoint_abort(&w);
    return false;
}

#endif
