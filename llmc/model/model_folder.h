/* model_folder.h - models in folders as Hugging Face has them: huggingface.h and huggingface_save.h, joined to a Model and
 * a ModelFile. The single file of model_container.h holds the same tensors, which are read here, too.
 */
#ifndef LLMC_MODEL_MODEL_FOLDER_H
#define LLMC_MODEL_MODEL_FOLDER_H

#include "../base/error.h"     /* Error, xmalloc, error_set, xcalloc */
#include "../base/text.h"      /* TokenList */
#include "backend.h"           /* QuantMatrix, Backend, Blocks, Device, ... */
#include "config.h"            /* ModelConfig */
#include "gguf_model.h"        /* gguf_plan_padding */
#include "huggingface.h"       /* Huggingface, huggingface_close, huggingface_floats, huggingface_hash, ... */
#include "huggingface_names.h" /* HuggingfacePart */
#include "huggingface_save.h"  /* HuggingfaceOutput, huggingface_save */
#include "model.h"             /* Model, model_blocks_of, MODEL_CHUNK, ModelChunk, ... */
#include "model_load.h"        /* ModelFile, model_put_weights, ModelLoad, QUANTIZE_KEEP, ... */
#include "optimizer.h"         /* Optimizer */
#include "safetensors.h"       /* SafetensorsType, SAFETENSORS_BF16, SAFETENSORS_F16, SAFETENSORS_F64, ... */
#include "tensors.h"           /* TENSOR_COUNT, TensorInfo, LINEAR_MATRICES, MATRIX_COUNT, ... */

/* Reads elements [first, first + n) of part i as float32, by all threads. A piece is large enough to be worth a thread. */
static inline void model_read_part(const Huggingface *h, size_t i, size_t first, float *to, size_t n) {
    enum { PIECE = MODEL_CHUNK / 32 };
#pragma omp parallel for schedule(static) if (n > PIECE)
    for (size_t at = 0; at < n; at += PIECE)
        huggingface_floats(h, i, first + at, to + at, n - at < PIECE ? n - at : PIECE);
}

/* Whether part i is a range of a matrix that is used where the file is mapped, and is finite. One that is not is also read,
 * which finds the value for the message. */
static inline bool model_part_is_ready(const Huggingface *h, size_t i, const Model *m) {
    const HuggingfacePart *p = &h->parts.part[i];
    const ModelRun run = model_run(m, p->at, p->rows * p->columns);
    return run.matrix && run.matrix->mapped >> run.part & 1 && safetensors_finite(h->tensor[i]);
}

/* Uploads the tensors of a folder. */
static inline bool model_read_parts(const Huggingface *h, const Model *m, const Optimizer *o, Error *e) {
    bool ok = true;
    model_clear_padding(m, o);
    for (size_t i = 0; ok && i < h->parts.count; i++) {
        const HuggingfacePart *p = &h->parts.part[i];
        if ((p->tensor == TENSOR_valuew && !m->config.value_head) || model_part_is_ready(h, i, m)) continue;
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

/* The order of parts by their place in the model. */
static inline int model_part_order(const void *a, const void *b, void *parts) {
    const HuggingfacePart *part = (const HuggingfacePart *)parts;
    const size_t x = part[*(const size_t *)a].at, y = part[*(const size_t *)b].at;
    return x < y ? -1 : x > y;
}

/* Adds part i, the next rows of its matrix, to a plan. map: whether the file's memory can be used. */
static inline void model_plan_part(const Huggingface *h, size_t i, QuantMatrix *q, bool map) {
    const HuggingfacePart *p = &h->parts.part[i];
    const SafetensorsType type = h->tensor[i]->type;
    q->type[q->parts] = type == SAFETENSORS_BF16  ? (int32_t)QUANT_BF16
                        : type == SAFETENSORS_F16 ? (int32_t)QUANT_F16
                                                  : (int32_t)QUANT_F32;
    q->rows[q->parts] = (int32_t)p->rows;
    if (map && !p->transposed && type != SAFETENSORS_F64) {
        q->blocks[q->parts] = (const Blocks *)h->tensor[i]->data;
        q->mapped = (int16_t)(q->mapped | 1 << q->parts);
    }
    q->parts++;
}

/* Returns the types of all matrices as the folder has them (MATRIX_COUNT, L), in new memory, for --quantize keep. If the
 * device has the process's own memory, those that need no transposition are used where the files are mapped. */
static inline QuantMatrix *model_folder_matrices(const Huggingface *h, const Backend *b) {
    const size_t layers = (size_t)h->config.layers, n = h->parts.count;
    QuantMatrix *plan = (QuantMatrix *)xcalloc(MATRIX_COUNT * layers, sizeof *plan);
    TensorInfo t[TENSOR_COUNT];
    size_t *order = (size_t *)xmalloc(n * sizeof *order);
    model_tensors(&h->config, t);
    for (size_t i = 0; i < n; i++) order[i] = i;
    qsort_r(order, n, sizeof *order, model_part_order, h->parts.part);
    for (size_t i = 0; i < n; i++) {
        const HuggingfacePart *p = &h->parts.part[order[i]];
        const int matrix = tensor_matrix(p->tensor);
        if (matrix < 0 || (matrix >= LINEAR_MATRICES && !b->quant_embed_forward)) continue;
        const TensorInfo *tensor = &t[p->tensor];
        const size_t layer = (p->at - tensor->offset) / (tensor->rows * tensor->columns);
        model_plan_part(h, order[i], &plan[(size_t)matrix * layers + layer], !b->memory_peak);
    }
    free(order);
    gguf_plan_padding(&h->config, plan);
    return plan;
}

/* The files of a mapped model; Model.unmap. */
typedef struct ModelMapping {
    Safetensors *file;
    int files;
} ModelMapping;

static inline void model_unmap(void *mapping) {
    ModelMapping *map = (ModelMapping *)mapping;
    for (int i = 0; i < map->files; i++) safetensors_close(&map->file[i]);
    free(map->file), free(map);
}

/* Gives the model the files that its matrices are in. */
static inline void model_take_mapping(Model *m, Huggingface *h) {
    m->mapped_bytes = 0;
    for (int i = 0; m->matrix && i < TENSOR_COUNT; i++)
        for (size_t l = 0; l < (model_blocks_of(m, i, 0) ? m->tensor[i].layers : 0); l++) {
            const QuantMatrix *q = model_blocks_of(m, i, (int)l);
            for (int part = 0; part < q->parts; part++)
                if (q->mapped >> part & 1) m->mapped_bytes += quant_part_bytes(q, part, m->tensor[i].columns);
        }
    if (!m->mapped_bytes) return;
    ModelMapping *map = (ModelMapping *)xmalloc(sizeof *map);
    *map = (ModelMapping){h->file, h->files};
    m->mapping = map;
    m->unmap = model_unmap;
    h->file = NULL;
    h->files = 0;
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
    QuantMatrix *plan = ok && how->quantize == QUANTIZE_KEEP ? model_folder_matrices(&h, b) : NULL;
    ok = ok && model_make_all(m, &config, how, plan, b, d, o, e);
    ok = ok && model_read_parts(&h, m, o, e);
    if (ok) {
        if (how->value_head && !h.config.value_head) model_new_head(m, o, how->seed);
        ok = model_load_lora(m, o, how, e) && huggingface_tokenizer(&h, &f->tokenizer, &f->tokenizer_bytes, e);
    }
    if (ok) {
        f->hash = huggingface_hash(&h);
        model_take_texts(&h, f);
        model_take_mapping(m, &h);
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
