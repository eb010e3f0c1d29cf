/* model_gguf.h - models in GGUF files: gguf_model.h and gguf_save.h, joined to a Model and a ModelFile.
 *
 * The entries general.* and tokenizer.* of a file that is read are kept as a small GGUF file without tensors in
 * ModelFile.gguf, so that a GGUF output has the same tokenizer and description.
 *
 *     if (!model_save_gguf(&model, &file, "out.gguf", QUANT_Q8_0, &e)) return false;
 */
#ifndef LLMC_MODEL_MODEL_GGUF_H
#define LLMC_MODEL_MODEL_GGUF_H

#include "../base/error.h"          /* Error, xstrndup */
#include "../base/io.h"             /* XXH3_64bits */
#include "../base/text.h"           /* TextSlice, text_append, TextBuffer, token_list_add, ... */
#include "../text/jinja_chat.h"     /* jinja_chat_is, jinja_chat_spec */
#include "../text/tokenizer.h"      /* Tokenizer, tokenizer_free, tokenizer_load, tokenizer_store */
#include "../text/tokenizer_gguf.h" /* TokenizerGguf, TokenizerGgufArrays, tokenizer_gguf_empty, ... */
#include "backend.h"                /* QuantType, Backend, Device, QuantMatrix */
#include "config.h"                 /* ModelConfig */
#include "gguf.h"                   /* Gguf, gguf_append_u64, gguf_begins, gguf_close, ... */
#include "gguf_model.h"             /* GgufTokenizer, gguf_config, gguf_load_rows, gguf_matrices, ... */
#include "gguf_save.h"              /* GgufOut, gguf_save */
#include "lora.h"                   /* lora_merged */
#include "model.h"                  /* Model, ModelRun, model_run, quant_blocks_at */
#include "model_load.h"             /* ModelFile, ModelLoad, QUANTIZE_KEEP, model_check_weights, ... */
#include "optimizer.h"              /* Optimizer */
#include "quantized.h"              /* quant_bytes */
#include "tensors.h"                /* TensorInfo */
#include <assert.h>

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

/* Returns a copy of a text with a NUL, or NULL if it is empty. */
static inline char *model_gguf_string(TextSlice text) { return text.length ? xstrndup(text.text, text.length) : NULL; }

/* Reads the tokenizer from the arrays of a file. */
static inline bool model_gguf_vocabulary(const Gguf *g, const GgufTokenizer *t, Tokenizer *to, Error *e) {
    TextSlice architecture = {0};
    gguf_get_text(g, "general.architecture", &architecture, e);
    char *named[] = {model_gguf_string(architecture), model_gguf_string(t->model), model_gguf_string(t->pre)};
    TokenizerGguf from = tokenizer_gguf_empty();
    from.architecture = named[0];
    from.model = named[1];
    from.pre = named[2];
    from.tokens = t->tokens;
    from.types = t->types;
    from.scores = t->scores;
    from.merges = t->merges;
    from.count = (int64_t)t->count;
    from.merge_count = (int64_t)t->merge_count;
    from.bos = t->bos;
    from.eos = t->eos;
    from.eot = t->eot;
    from.eom = t->eom;
    from.unknown = t->unknown;
    from.add_bos = t->add_bos;
    from.add_space_prefix = t->add_space_prefix;
    const bool ok = tokenizer_open_gguf(to, &from, g->name, e);
    for (int i = 0; i < 3; i++) free(named[i]);
    return ok;
}

/* The token's text under a key of the chat template's variables. */
static inline void model_gguf_variable(json_t *variables, const char *key, const GgufTokenizer *t, int32_t id) {
    if (id < 0 || (size_t)id >= t->count) return;
    json_object_set_new(variables, key, json_stringn(t->tokens[id].text, t->tokens[id].length));
}

/* Sets the tokenizer, the chat template and the tokens that end a completion from the entries of a file. A tokenizer that
 * is not supported is not read, which the note says; the model can then be used with --tokenizer and with shards. */
static inline bool model_gguf_tokenizer(const Gguf *g, ModelFile *f, Error *e) {
    GgufTokenizer t;
    Tokenizer tokenizer;
    if (!gguf_tokenizer(g, &t, e)) return false;
    bool ok = true;
    if (t.count && t.model.length) {
        Error inner;
        if (!model_gguf_vocabulary(g, &t, &tokenizer, &inner)) {
            TextBuffer note = {0};
            text_format(&note, "%s; the tokenizer is not read, give one with --tokenizer", inner.text);
            f->note = note.text;
            for (int i = 0; i < 3; i++) token_list_add(&f->stops, i == 0 ? t.eos : i == 1 ? t.eot : t.eom);
        } else {
            ok = tokenizer_store(&tokenizer, &f->tokenizer, &f->tokenizer_bytes, e);
            for (int32_t i = 0; i < tokenizer.end_count; i++) token_list_add(&f->stops, tokenizer.ends[i]);
            tokenizer_free(&tokenizer);
        }
    }
    if (ok && t.chat_template.length) {
        json_t *variables = json_object();
        char *text = model_gguf_string(t.chat_template);
        model_gguf_variable(variables, "bos_token", &t, t.bos);
        model_gguf_variable(variables, "eos_token", &t, t.eos);
        model_gguf_variable(variables, "unk_token", &t, t.unknown);
        model_gguf_variable(variables, "pad_token", &t, t.padding);
        f->chat_template = jinja_chat_spec(text, variables, NULL, e);
        ok = f->chat_template != NULL;
        free(text);
        json_decref(variables);
    }
    gguf_tokenizer_free(&t);
    return ok;
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

/* The context of model_gguf_put(). */
typedef struct ModelGguf {
    const Model *m;
    const Optimizer *o; /* gets master weights; or NULL */
    const char *name;   /* the file's */
} ModelGguf;

/* The number of element `first` of a layer of a tensor among the elements of all tensors. */
static inline size_t model_gguf_at(const Model *m, int tensor, int layer, size_t first) {
    const TensorInfo *t = &m->tensor[tensor];
    return t->offset + (size_t)layer * t->rows * t->columns + first;
}

/* gguf_load()'s GgufPut. */
static inline bool model_gguf_put(void *context, int tensor, int layer, size_t first, const float *values, size_t n,
                                  Error *e) {
    const ModelGguf *to = (const ModelGguf *)context;
    const size_t at = model_gguf_at(to->m, tensor, layer, first);
    if (!model_check_weights(to->m, to->name, at, values, n, e)) return false;
    model_put_weights(to->m, to->o, at, values, n);
    return true;
}

/* gguf_load_rows()'s GgufPutRows: takes rows of matrices that the model has in the same type. */
static inline bool model_gguf_put_rows(void *context, int tensor, int layer, size_t first, QuantType type,
                                       const void *blocks, size_t rows) {
    const Model *m = ((const ModelGguf *)context)->m;
    const size_t columns = m->tensor[tensor].columns, n = rows * columns;
    const ModelRun run = model_run(m, model_gguf_at(m, tensor, layer, first * columns), n);
    if (!run.matrix || run.matrix->type[run.part] != (int32_t)type) return false;
    assert(run.n == n); /* a matrix that keeps the file's types has a range for each of the file's tensors */
    m->backend->upload(m->device, quant_blocks_at(run.matrix, run.part, run.first), blocks, quant_bytes(type, n));
    return true;
}

/* model_load_as() for an open GGUF file, which is closed in any case. */
static inline bool model_load_gguf(Model *m, ModelFile *f, Gguf *g, const ModelLoad *how, const Backend *b, Device *d,
                                   Optimizer *o, Error *e) {
    ModelConfig config;
    ModelGguf to = {m, o, g->name};
    QuantMatrix *plan = NULL;
    bool ok = gguf_config(g, &config, e) &&
              (how->quantize != QUANTIZE_KEEP || (plan = gguf_matrices(g, &config, e)) != NULL) &&
              model_make_all(m, &config, how, plan, b, d, o, e) &&
              gguf_load_rows(g, &m->config, model_gguf_put, model_gguf_put_rows, &to, e);
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

/* gguf_save()'s GgufGet: weights with the adapters added. context: the Model. */
static inline bool model_gguf_get(void *context, int tensor, int layer, size_t first, float *values, size_t n,
                                  Error *e) {
    const Model *m = (const Model *)context;
    (void)e;
    lora_merged(m, model_gguf_at(m, tensor, layer, first), values, n);
    return true;
}

/* Makes GGUF's arrays of a model's tokenizer and chat template, for a model that came from no GGUF file. arrays: owns
 * what *to refers to. A template that is not Jinja has no place in the file. */
static inline bool model_gguf_of_tokenizer(const ModelFile *f, TokenizerGgufArrays *arrays, GgufTokenizer *to,
                                           Error *e) {
    Tokenizer t;
    if (!tokenizer_load(&t, f->tokenizer, f->tokenizer_bytes, e)) return false;
    const bool ok = tokenizer_to_gguf(&t, arrays, e);
    tokenizer_free(&t);
    if (!ok) return false;
    const TokenizerGguf *g = &arrays->g;
    *to = (GgufTokenizer){.model = {g->model, strlen(g->model)},
                          .tokens = arrays->tokens,
                          .types = arrays->types,
                          .scores = arrays->scores,
                          .merges = arrays->merges,
                          .count = (size_t)g->count,
                          .merge_count = (size_t)g->merge_count,
                          .bos = (int32_t)g->bos,
                          .eos = (int32_t)g->eos,
                          .eot = (int32_t)g->eot,
                          .eom = (int32_t)g->eom,
                          .unknown = (int32_t)g->unknown,
                          .padding = -1,
                          .add_bos = g->add_bos,
                          .add_eos = -1,
                          .add_space_prefix = g->add_space_prefix};
    if (g->pre) to->pre = (TextSlice){g->pre, strlen(g->pre)};
    const char *values = f->chat_template && jinja_chat_is(f->chat_template) ? strstr(f->chat_template, "}#}\n") : NULL;
    if (values) to->chat_template = (TextSlice){values + 4, strlen(values + 4)};
    return true;
}

/* Writes a model with its adapters added to the weights. type: of the matrices. */
static inline bool model_save_gguf(const Model *m, const ModelFile *f, const char *path, QuantType type, Error *e) {
    Gguf carry;
    GgufOut out = {.type = type};
    GgufTokenizer tokenizer = {0};
    TokenizerGgufArrays arrays = {0};
    if (f->gguf) {
        if (!gguf_memory(&carry, f->gguf, f->gguf_bytes, e)) return false;
        out.carry = &carry;
    } else if (f->tokenizer) {
        if (!model_gguf_of_tokenizer(f, &arrays, &tokenizer, e)) return false;
        out.tokenizer = &tokenizer;
    }
    const bool ok = gguf_save(&m->config, &out, path, model_gguf_get, (void *)(uintptr_t)m, e);
    if (f->gguf) gguf_close(&carry);
    tokenizer_gguf_free(&arrays);
    return ok;
}

#endif
