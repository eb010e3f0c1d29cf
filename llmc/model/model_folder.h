/* model_folder.h - models in folders as Hugging Face has them: huggingface.h and huggingface_save.h, joined to a Model and
 * a ModelFile. The single file of model_container.h holds the same tensors, which are read here, too.
 */
#ifndef LLMC_MODEL_MODEL_FOLDER_H
#define LLMC_MODEL_MODEL_FOLDER_H

#include "../base/error.h"     /* Error, error_set */
#include "../base/text.h"      /* TokenList */
#include "backend.h"           /* Backend, Device */
#include "config.h"            /* ModelConfig */
#include "huggingface.h"       /* Huggingface, huggingface_close, huggingface_floats, huggingface_hash, ... */
#include "huggingface_names.h" /* HuggingfacePart */
#include "huggingface_save.h"  /* HuggingfaceOutput, huggingface_save */
#include "model.h"             /* Model, MODEL_CHUNK, ModelChunk, model_each_chunk */
#include "model_load.h"        /* ModelFile, model_put_weights, ModelLoad, model_check_weights, ... */
#include "optimizer.h"         /* Optimizer */
#include "safetensors.h"       /* SafetensorsType */
#include "tensors.h"           /* TENSOR_valueb, TENSOR_valuew */

/* Reads elements [first, first + n) of part i as float32, by all threads. A piece is large enough to be worth a thread. */
static inline void model_read_part(const Huggingface *h, size_t i, size_t first, float *to, size_t n) {
    enum { PIECE = MODEL_CHUNK / 32 };
#pragma omp parallel for schedule(static) if (n > PIECE)
    for (size_t at = 0; at < n; at += PIECE)
        huggingface_floats(h, i, first + at, to + at, n - at < PIECE ? n - at : PIECE);
}

/* Uploads the tensors of a folder. */
static inline bool model_read_parts(const Huggingface *h, const Model *m, const Optimizer *o, Error *e) {
    bool ok = true;
    model_clear_padding(m, o);
    for (size_t i = 0; ok && i < h->parts.count; i++) {
        const HuggingfacePart *p = &h->parts.part[i];
        if (p->tensor == TENSOR_valuew && !m->config.value_head) continue;
        ModelChunk c = {0};
        while (ok && model_each_chunk(&c, p->rows * p->columns)) {
            model_read_part(h, i, c.at, c.host, c.n);
            ok = model_check_weights(m, h->path, p->at + c.at, c.host, c.n, e);
            if (ok) model_put_weights(m, o, p->at + c.at, c.host, c.n);
        }
        free(c.host);
    }
    if (m->config.value_head && h->config.value_head)
        model_put_weights(m, o, m->tensor[TENSOR_valueb].offset, &h->bias, 1);
    return ok;
}

/* Takes over the texts of a folder. */
static inline void model_take_texts(Huggingface *h, ModelFile *f) {
    f->head = h->config.value_head;
    f->chat_template = h->chat_template;
    f->reward = h->reward;
    f->source = h->source;
    f->stops = h->stops;
    f->note = h->note;
    if (h->lineage) {
        json_decref(f->lineage);
        f->lineage = json_incref(h->lineage);
    }
    h->chat_template = h->reward = h->note = NULL;
    h->source = NULL;
    h->stops = (TokenList){0};
}

/* model_load_as() for a folder. */
static inline bool model_load_folder(Model *m, ModelFile *f, const char *path, const ModelLoad *how, const Backend *b,
                                     Device *d, Optimizer *o, Error *e) {
    Huggingface h;
    if (!huggingface_open(&h, path, e)) return false;
    ModelConfig config = h.config;
    bool ok = true;
    if (h.headless && !how->value_head)
        ok = error_set(e, "%s: is a reward model without lm_head.weight, which cannot be used as a language model",
                       path);
    ok = ok && model_make_all(m, &config, how, NULL, b, d, o, e);
    ok = ok && model_read_parts(&h, m, o, e);
    if (ok) {
        if (how->value_head && !h.config.value_head) model_new_head(m, o, how->seed);
        ok = model_load_lora(m, o, how, e) && huggingface_tokenizer(&h, &f->tokenizer, &f->tokenizer_bytes, e);
    }
    if (ok) {
        f->hash = huggingface_hash(&h);
        model_take_texts(&h, f);
    }
    huggingface_close(&h);
    return ok;
}

/* What an output folder gets from f. type: of the tensors; SAFETENSORS_TYPE_COUNT: those of the input, float32 for
 * others. */
static inline HuggingfaceOutput model_folder_output(const ModelFile *f, SafetensorsType type) {
    return (HuggingfaceOutput){.source = f->source,
                               .type = type,
                               .tokenizer = f->tokenizer,
                               .tokenizer_bytes = f->tokenizer_bytes,
                               .chat_template = f->chat_template,
                               .lineage = f->lineage,
                               .reward = f->reward,
                               .stops = f->stops};
}

/* model_save() for a folder. */
static inline bool model_save_folder(const Model *m, const ModelFile *f, const char *path, SafetensorsType type,
                                     Error *e) {
    const HuggingfaceOutput out = model_folder_output(f, type);
    return huggingface_save(m, &out, path, e);
}

#endif
