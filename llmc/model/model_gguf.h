/* model_gguf.h - models in GGUF files: gguf_model.h and gguf_save.h, joined to a Model and a ModelFile.
 *
 * The entries general.* and tokenizer.* of a file that is read are kept as a small GGUF file without tensors in
 * ModelFile.gguf, so that a GGUF output has the same tokenizer and description.
 *
 *     if (!model_save_gguf(&model, &file, "out.gguf", QUANT_Q8_0, &e)) return false;
 */
#ifndef LLMC_MODEL_MODEL_GGUF_H
#define LLMC_MODEL_MODEL_GGUF_H

#include "../base/error.h" /* Error */
#include "../base/io.h"    /* XXH3_64bits */
#include "../base/text.h"  /* text_append, TextBuffer, text_format, text_free */
#include "backend.h"       /* Backend, Device */
#include "config.h"        /* ModelConfig */
#include "gguf.h"          /* Gguf, gguf_append_u64, gguf_begins, gguf_close, ... */
#include "gguf_model.h"    /* GgufTokenizer, gguf_config, gguf_load, gguf_tokenizer, ... */
#include "gguf_save.h"     /* GgufOut, gguf_save */
#include "lora.h"          /* lora_merged */
#include "model.h"         /* Model */
#include "model_load.h"    /* ModelFile, model_file_add_stop, ModelLoad, model_load_lora, ... */
#include "optimizer.h"     /* Optimizer */
#include "quantized.h"     /* QuantType */
#include "tensors.h"       /* TensorInfo */

/* Keeps the entries that a GGUF output gets. */
static inline void model_gguf_keep(const Gguf *g, ModelFile *f) {
    GgufWriter w = {0};
    TextBuffer b = {0};
    for (size_t i = 0; i < g->entry_count; i++) {
        const GgufEntry *entry = &g->entries[i];
        const bool wanted = gguf_begins(entry->key, "general.") || gguf_begins(entry->key, "tokenizer.");
        if (wanted && !gguf_is(entry->key, "general.alignment")) gguf_put_entry(&w, entry);
    }
    text_append(&b, "GGUF", 4);
    gguf_append_u32(&b, GGUF_VERSION);
    gguf_append_u64(&b, 0);
    gguf_append_u64(&b, w.entry_count);
    text_append(&b, w.entries.text ? w.entries.text : "", w.entries.length);
    while (b.length % GGUF_ALIGNMENT) text_append(&b, "", 1);
    text_free(&w.entries);
    f->gguf = b.text;
    f->gguf_bytes = b.length;
}

/* Sets the tokenizer and the chat template of a model from the entries of its GGUF file. Not done yet: the model has no
 * tokenizer, which a warning says; the tokens that end a completion are set. */
static inline bool model_gguf_tokenizer(const Gguf *g, ModelFile *f, Error *e) {
    GgufTokenizer t;
    TextBuffer note = {0};
    if (!gguf_tokenizer(g, &t, e)) return false;
    model_file_add_stop(f, t.eos);
    model_file_add_stop(f, t.eot);
    model_file_add_stop(f, t.eom);
    if (t.count) {
        text_format(&note, "%s: its tokenizer is not read; give one with --tokenizer", g->name);
        f->note = note.text;
    }
    gguf_tokenizer_free(&t);
    return true;
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

typedef struct ModelGguf {
    const Model *m;
    const Optimizer *o;
} ModelGguf;

/* gguf_load()'s GgufPut. */
static inline bool model_gguf_put(void *context, int tensor, int layer, size_t first, const float *values, size_t n,
                                  Error *e) {
    const ModelGguf *to = (const ModelGguf *)context;
    const TensorInfo *t = &to->m->tensor[tensor];
    (void)e;
    model_put_weights(to->m, to->o, t->offset + (size_t)layer * t->rows * t->columns + first, values, n);
    return true;
}

/* model_load_as() for an open GGUF file, which is closed in any case. */
static inline bool model_load_gguf(Model *m, ModelFile *f, Gguf *g, const ModelLoad *how, const Backend *b, Device *d,
                                   Optimizer *o, Error *e) {
    ModelConfig config;
    ModelGguf to = {m, o};
    bool ok = gguf_config(g, &config, e) && model_make_all(m, &config, how, b, d, o, e) &&
              gguf_load(g, &m->config, model_gguf_put, &to, e);
    if (ok && how->value_head) model_new_head(m, o, how->seed);
    ok = ok && model_load_lora(m, o, how, e) && model_gguf_tokenizer(g, f, e);
    if (ok) {
        f->hash = XXH3_64bits(g->file, g->bytes);
        model_gguf_keep(g, f);
    }
    gguf_close(g);
    return ok;
}

/* ---- saving ------------------------------------------------------------------------------------------------------ */

/* gguf_save()'s GgufGet: weights with the adapters added. */
static inline bool model_gguf_get(void *context, int tensor, int layer, size_t first, float *values, size_t n,
                                  Error *e) {
    const Model *m = (const Model *)context;
    const TensorInfo *t = &m->tensor[tensor];
    (void)e;
    lora_merged(m, t->offset + (size_t)layer * t->rows * t->columns + first, values, n);
    return true;
}

/* Writes a model with its adapters added to the weights. type: of the matrices. */
static inline bool model_save_gguf(const Model *m, const ModelFile *f, const char *path, QuantType type, Error *e) {
    Gguf carry;
    GgufOut out = {.type = type};
    if (f->gguf) {
        if (!gguf_memory(&carry, f->gguf, f->gguf_bytes, e)) return false;
        out.carry = &carry;
    }
    const bool ok = gguf_save(&m->config, &out, path, model_gguf_get, (void *)(uintptr_t)m, e);
    if (f->gguf) gguf_close(&carry);
    return ok;
}

#endif
