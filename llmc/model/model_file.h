/* model_file.h - loading and saving models: weights, tokenizer, chat template, lineage and training state.
 *
 * A checkpoint is llm.c's file with a trailer (checkpoint.h). The trailer holds the tokenizer, the chat template, the
 * value head, the kind and normalisation of a reward model (reward_model.h), and the lineage: a JSON array with one
 * entry per training stage of the model (stage, parent's hash, options). A training state is a checkpoint that also
 * holds Adam's moments and the trainer's counters: `generate -c run.state` works, and `--resume run.state` continues
 * bit for bit. If the device keeps bf16 weights and float32 master weights (--device cuda --dtype bf16), the weights in
 * the file are those that the model computed with, and a training state also holds the masters (MSTR).
 *
 * A folder as Hugging Face has it is read as well (huggingface.h), and written if the output's name ends in '/' or is
 * that of a folder (huggingface_save.h). A folder holds no training state.
 *
 *     ModelFile f;
 *     model_load(&model, &f, "sft.bin", NULL, false, backend, device, true, seed, NULL, &e);
 *     model_save(&model, &f, "out.bin", false, NULL, NULL, &e);
 */
#ifndef LLMC_MODEL_MODEL_FILE_H
#define LLMC_MODEL_MODEL_FILE_H

#include "../base/error.h"     /* Error, error_set, xmalloc, xcalloc, ... */
#include "../base/io.h"        /* XXH3_state_t, XXH3_64bits_digest, XXH3_64bits_reset, XXH3_64bits_update, ... */
#include "../base/text.h"      /* TokenList, token_list_append, token_list_free */
#include "backend.h"           /* Backend, Device, Floats, floats_at */
#include "checkpoint.h"        /* CheckpointReader, CheckpointWriter, checkpoint_payload, checkpoint_put, ... */
#include "config.h"            /* ModelConfig, LoraConfig, model_config_check, FAMILY_GPT2, ... */
#include "huggingface.h"       /* Huggingface, huggingface_ends, HuggingfaceSource, huggingface_close, ... */
#include "huggingface_names.h" /* HuggingfacePart */
#include "huggingface_save.h"  /* HuggingfaceOutput, huggingface_is_output, huggingface_save */
#include "lora.h"              /* model_trained_count, lora_add, lora_merged, model_trained_first */
#include "model.h"             /* Model, ModelChunk, model_each_chunk, model_download, ... */
#include "model_single.h"      /* single_layer, single_text, single_begins, single_has, ... */
#include "optimizer.h"         /* Optimizer, optimizer_new, Slice, optimizer_free, ... */
#include "peft.h"              /* Peft, peft_close, peft_open, peft_read */
#include "safetensors.h"       /* SAFETENSORS_BF16, SAFETENSORS_TYPE_COUNT, SafeTensor, SafetensorsType, ... */
#include "share.h"             /* Share */
#include "tensors.h"           /* FIRST_LORA_TENSOR, TENSOR_COUNT, TensorInfo, TENSOR_valuew, ... */
#include "transformer.h"       /* LINEAR_COUNT, LinearInfo, model_linear */
#include <jansson.h>

typedef struct ModelFile {
    void *tokenizer; /* blob for tokenizer_load(), or NULL */
    size_t tokenizer_bytes;
    char *chat_template; /* or NULL */
    json_t *lineage;     /* array */
    char *trainer;       /* a training state's counters as JSON, or NULL */
    char *reward;        /* kind and normalisation of a reward model as JSON (reward_model.h), or NULL */
    bool head;           /* the file that was read has a value head */
    uint64_t hash;       /* hash of the file that was read; 0 for a new model */
    TokenList stops;     /* tokens that end a completion, of generation_config.json; an output folder lists them */
    HuggingfaceSource *source; /* what an output folder needs of the folder that was read, or NULL */
    char *note;                /* a warning for the user, or NULL */
} ModelFile;

enum { MODEL_TEXT_LIMIT = 64 << 20 }; /* bytes of a text section */

static inline void model_file_free(ModelFile *f) {
    free(f->tokenizer), free(f->chat_template), free(f->trainer), free(f->reward), json_decref(f->lineage);
    huggingface_source_free(f->source), token_list_free(&f->stops), free(f->note);
    *f = (ModelFile){0};
}

/* Adds a token to those that end a completion, which an output folder lists. token: -1 for none. */
static inline void model_file_add_stop(ModelFile *f, int32_t token) {
    for (int32_t i = 0; i < f->stops.count; i++)
        if (f->stops.ids[i] == token) return;
    if (token >= 0) token_list_append(&f->stops, token);
}

/* Uploads those of elements [at, at + n) of an array over all parameters that are in this rank's slices. */
static inline void model_put_slices(const Model *m, const Optimizer *o, Floats *to, size_t at, const float *host,
                                    size_t n) {
    for (int i = 0; i < o->slices; i++) {
        const Slice *s = &o->slice[i];
        const size_t offset = slice_offset(m, s), first = offset > at ? offset : at;
        const size_t last = offset + s->n < at + n ? offset + s->n : at + n;
        if (first < last)
            m->backend->upload(m->device, floats_at(to, s->at + first - offset), host + first - at,
                               (last - first) * sizeof *host);
    }
}

/* Uploads weights [at, at + n), also in full precision to the optimizer's masters if it has any. */
static inline void model_put_weights(const Model *m, const Optimizer *o, size_t at, const float *host, size_t n) {
    model_upload(m, at, host, n);
    if (o && o->master) model_put_slices(m, o, o->master, at, host, n);
}

static inline bool model_read_weights(CheckpointReader *r, const Model *m, const Optimizer *o, Error *e) {
    ModelChunk c = {0};
    bool ok = true;
    while (ok && model_each_chunk(&c, gpt2_file_elements(&m->config))) {
        ok = checkpoint_weights(r, c.host, c.n, "weights", e);
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
    const bool ok = checkpoint_payload(r, host, n * sizeof *host, "value head", e);
    if (ok && m->config.value_head) model_put_weights(m, o, m->tensor[TENSOR_valuew].offset, host, n);
    free(host);
    return ok;
}

/* Reads an array over all trained parameters, moments or master weights, from the file and stores this rank's slices in
 * `to`. to: NULL for the masters of a device that has none; they become its weights. what: the array's name in messages. */
static inline bool model_read_array(CheckpointReader *r, const Model *m, const Optimizer *o, Floats *to, uint64_t bytes,
                                    const char *what, Error *e) {
    const size_t first = model_trained_first(m), count = model_trained_count(m);
    if (bytes != count * sizeof(float))
        return error_set(e, "%s: %s of %llu bytes, the model needs %zu", r->in.name, what, (unsigned long long)bytes,
                         count * sizeof(float));
    ModelChunk c = {0};
    bool ok = true;
    while (ok && model_each_chunk(&c, count)) {
        ok = checkpoint_payload(r, c.host, c.n * sizeof *c.host, what, e);
        if (ok && to) model_put_slices(m, o, to, first + c.at, c.host, c.n);
        else if (ok) model_upload(m, first + c.at, c.host, c.n);
    }
    free(c.host);
    return ok;
}

/* Adds adapters to the weights. c, t: the configuration with the adapters and its tensors; host: their elements, from
 * that of the first adapter on. */
static inline void model_merge_lora(const Model *m, const Optimizer *o, const ModelConfig *c, const TensorInfo *t,
                                    const float *host) {
    for (int linear = 0; linear < LINEAR_COUNT; linear++) {
        const LinearInfo *i = model_linear(linear);
        const TensorInfo *matrix = &t[i->weight], *a = &t[i->lora_a], *b = &t[i->lora_b];
        const size_t size = matrix->rows * matrix->columns;
        float *weights = (float *)xmalloc(size * sizeof *weights);
        for (size_t l = 0; l < (a->size ? matrix->layers : 0); l++) {
            const size_t at = matrix->offset + l * size;
            model_download(m, at, weights, size);
            lora_add(c, t, i, l, host + a->offset - t[FIRST_LORA_TENSOR].offset + l * a->rows * a->columns,
                     host + b->offset - t[FIRST_LORA_TENSOR].offset + l * b->rows * b->columns, at, weights, size);
            model_put_weights(m, o, at, weights, size);
        }
        free(weights);
    }
}

/* Checks that a model's adapters, if it has any, have the shape of those in a file. */
static inline bool model_same_lora(const ModelConfig *c, const LoraConfig *lora, const char *name, Error *e) {
    if (!c->lora.rank || !memcmp(lora, &c->lora, sizeof *lora)) return true;
    return error_set(e, "%s: its adapters have rank %d, targets %d and scale %g, expected %d, %d and %g", name,
                     lora->rank, lora->targets, (double)lora->scale, c->lora.rank, c->lora.targets,
                     (double)c->lora.scale);
}

/* Reads the adapters of a training state. A model without adapters gets their sum with its weights. */
static inline bool model_read_lora(CheckpointReader *r, Model *m, const Optimizer *o, uint64_t bytes, Error *e) {
    LoraConfig lora;
    if (bytes < sizeof lora || !checkpoint_payload(r, &lora, sizeof lora, "adapters", e))
        return error_set(e, "%s: adapters of %llu bytes", r->in.name, (unsigned long long)bytes);
    if (!model_same_lora(&m->config, &lora, r->in.name, e)) return false;
    ModelConfig config = m->config;
    TensorInfo t[TENSOR_COUNT];
    config.lora = lora;
    if (!model_config_check(&config, r->in.name, e)) return false;
    const size_t all = model_tensors(&config, t), first = t[FIRST_LORA_TENSOR].offset, count = all - first;
    if (bytes != sizeof lora + count * sizeof(float))
        return error_set(e, "%s: adapters of %llu bytes, expected %zu", r->in.name, (unsigned long long)bytes,
                         sizeof lora + count * sizeof(float));
    float *host = (float *)xmalloc(count * sizeof *host);
    bool ok = checkpoint_payload(r, host, count * sizeof *host, "adapters", e);
    if (ok && m->config.lora.rank) model_put_weights(m, o, first, host, count);
    else if (ok) model_merge_lora(m, o, &config, t, host);
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

static inline bool model_read_sections(CheckpointReader *r, Model *m, ModelFile *f, Optimizer *o, bool *head,
                                       Error *e) {
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
        else if (!strcmp(tag, "RNRM"))
            ok = (f->reward = (char *)model_read_text(r, f->reward, NULL, "reward normalisation", e));
        else if (!strcmp(tag, "LINE")) ok = model_read_lineage(r, f, e);
        else if (!strcmp(tag, "LORA")) ok = model_read_lora(r, m, o, bytes, e);
        else if (!strcmp(tag, "HEAD")) ok = *head = model_read_head(r, m, o, bytes, e);
        else if (o && !strcmp(tag, "ADM1")) ok = model_read_array(r, m, o, o->m, bytes, "optimizer moments", e);
        else if (o && !strcmp(tag, "ADM2")) ok = model_read_array(r, m, o, o->v, bytes, "optimizer moments", e);
        else if (o && !strcmp(tag, "MSTR")) ok = model_read_array(r, m, o, o->master, bytes, "master weights", e);
        if (!ok) return false;
    }
}

/* Initialises the value head of a model whose file has none. */
static inline void model_new_head(const Model *m, const Optimizer *o, uint64_t seed) {
    const size_t n = (size_t)m->config.width + 1;
    float *host = (float *)xcalloc(n, sizeof *host);
    model_init_tensor(&m->config, TENSOR_valuew, &m->tensor[TENSOR_valuew], seed, host);
    model_put_weights(m, o, m->tensor[TENSOR_valuew].offset, host, n);
    free(host);
}

/* ---- folders ----------------------------------------------------------------------------------------------------- */

/* Sets the padding rows of the embeddings and of the output matrix to 0. */
static inline void model_clear_padding(const Model *m, const Optimizer *o) {
    const int tensor[] = {TENSOR_wte, TENSOR_headw};
    const ModelConfig *c = &m->config;
    const size_t used = (size_t)c->vocab * (size_t)c->width;
    const size_t n = (size_t)(c->padded_vocab - c->vocab) * (size_t)c->width;
    float *zero = (float *)xcalloc(n, sizeof *zero);
    for (int i = 0; n && i < (c->tied ? 1 : 2); i++)
        model_put_weights(m, o, m->tensor[tensor[i]].offset + used, zero, n);
    free(zero);
}

/* Uploads the tensors of a folder. */
static inline void model_read_parts(const Huggingface *h, const Model *m, const Optimizer *o) {
    model_clear_padding(m, o);
    for (size_t i = 0; i < h->parts.count; i++) {
        const HuggingfacePart *p = &h->parts.part[i];
        if (p->tensor == TENSOR_valuew && !m->config.value_head) continue;
        for (ModelChunk c = {0}; model_each_chunk(&c, p->rows * p->columns);) {
            huggingface_floats(h, i, c.at, c.host, c.n);
            model_put_weights(m, o, p->at + c.at, c.host, c.n);
        }
    }
    if (m->config.value_head && h->config.value_head)
        model_put_weights(m, o, m->tensor[TENSOR_valueb].offset, &h->bias, 1);
}

/* Takes over the texts of a folder or a single file. */
static inline bool model_take_texts(Huggingface *h, ModelFile *f, Error *e) {
    const bool single = single_text(h, "llmc.config") != NULL, sourced = single_text(h, "llmc.source") != NULL;
    if (!single && !huggingface_tokenizer(h, &f->tokenizer, &f->tokenizer_bytes, e)) return false;
    if (single) {
        f->tokenizer = h->tokenizer;
        f->tokenizer_bytes = h->tokenizer_bytes;
        f->trainer = h->trainer;
        h->tokenizer = h->trainer = NULL;
    }
    f->hash = huggingface_hash(h);
    f->head = h->config.value_head;
    f->chat_template = h->chat_template;
    f->reward = h->reward;
    if (!single || sourced) {
        f->source = h->source;
        h->source = NULL;
    }
    f->stops = h->stops;
    f->note = h->note;
    if (h->lineage) {
        json_decref(f->lineage);
        f->lineage = json_incref(h->lineage);
    }
    h->chat_template = h->reward = h->note = NULL;
    h->stops = (TokenList){0};
    return true;
}

/* What model_load_as() makes of a file. */
typedef struct ModelLoad {
    const ModelConfig *shape; /* NULL, or a new model of this shape is created instead of reading a file */
    bool value_head;          /* the model has a value head; it gets a new one if the file has none */
    bool gradients;           /* the model will be trained */
    LoraConfig lora;          /* adapters that the model gets; new ones unless a file has them */
    const char *adapter;      /* NULL, or a folder of peft: a trained model gets its adapters, any other their sum */
    uint64_t seed;            /* of new weights */
    Share share;              /* this rank's share of gradients and moments; ranks 0: a single rank */
} ModelLoad;

/* Allocates a model of configuration c with what `how` adds. */
static inline bool model_make(Model *m, ModelConfig *c, const ModelLoad *how, const Backend *b, Device *d, Error *e) {
    const Share alone = {.ranks = 1};
    c->value_head = how->value_head;
    c->lora = how->lora;
    if (how->adapter && how->gradients) {
        Peft p;
        if (!peft_open(&p, how->adapter, c, &c->lora, e)) return false;
        peft_close(&p);
    }
    const bool ok = model_new(m, c, b, d, false, e);
    m->share = how->share.ranks ? how->share : alone;
    return ok;
}

typedef struct ModelPut {
    const Model *m;
    const Optimizer *o;
    float *host; /* NULL: values are the model's; else they are stored from element `first` on */
    size_t first;
} ModelPut;

/* peft_read()'s put. */
static inline void model_put_adapter(void *context, size_t at, const float *values, size_t n) {
    const ModelPut *to = (const ModelPut *)context;
    if (to->host) memcpy(to->host + at - to->first, values, n * sizeof *values);
    else model_put_weights(to->m, to->o, at, values, n);
}

/* Gives a loaded model its adapters: initial ones, with which they change nothing, or those of how->adapter. */
static inline bool model_load_lora(Model *m, const Optimizer *o, const ModelLoad *how, Error *e) {
    for (int i = FIRST_LORA_TENSOR; i < TENSOR_COUNT; i++) {
        const TensorInfo *t = &m->tensor[i];
        if (!t->size) continue;
        float *host = (float *)xmalloc(t->size * sizeof *host);
        model_init_tensor(&m->config, i, t, how->seed, host);
        model_put_weights(m, o, t->offset, host, t->size);
        free(host);
    }
    if (!how->adapter) return true;
    Peft p;
    TensorInfo t[TENSOR_COUNT];
    LoraConfig lora;
    if (!peft_open(&p, how->adapter, &m->config, &lora, e)) return false;
    ModelPut put = {.m = m, .o = o};
    if (!how->gradients) {
        const size_t all = model_tensors(&p.config, t);
        put.first = t[FIRST_LORA_TENSOR].offset;
        put.host = (float *)xcalloc(all - put.first, sizeof *put.host);
    }
    peft_read(&p, model_put_adapter, &put);
    if (put.host) model_merge_lora(m, o, &p.config, t, put.host);
    free(put.host);
    peft_close(&p);
    return true;
}

/* Reads an array of a training state in a single file, as model_read_array() does for a checkpoint. */
static inline bool model_read_layers(const Huggingface *h, const Model *m, const Optimizer *o, const char *tag,
                                     Floats *to, Error *e) {
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (int l = 0; tensor_trained(&m->tensor[i]) && l < (int)m->tensor[i].layers; l++) {
            const TensorInfo *t = &m->tensor[i];
            const size_t n = t->rows * t->columns, at = t->offset + (size_t)l * n;
            const SafeTensor *from = single_layer(h, tag, i, t->name, l, n, e);
            if (!from) return false;
            for (ModelChunk c = {0}; model_each_chunk(&c, n);) {
                safetensors_floats(from, c.at, c.host, c.n);
                if (to) model_put_slices(m, o, to, at + c.at, c.host, c.n);
                else model_upload(m, at + c.at, c.host, c.n);
            }
        }
    return true;
}

/* Reads the adapters of a training state in a single file. A model without adapters gets their sum with its weights. */
static inline bool model_read_adapters(const Huggingface *h, Model *m, const Optimizer *o, Error *e) {
    ModelConfig config = m->config;
    TensorInfo t[TENSOR_COUNT];
    if (!single_lora(h, &config.lora, e)) return false;
    if (!config.lora.rank) return true;
    if (!model_config_check(&config, h->path, e) || !model_same_lora(&m->config, &config.lora, h->path, e))
        return false;
    const size_t all = model_tensors(&config, t), first = t[FIRST_LORA_TENSOR].offset, count = all - first;
    float *host = (float *)xmalloc(count * sizeof *host);
    bool ok = true;
    for (int i = FIRST_LORA_TENSOR; ok && i < TENSOR_COUNT; i++)
        for (int l = 0; ok && t[i].size && l < (int)t[i].layers; l++) {
            const size_t n = t[i].rows * t[i].columns;
            const SafeTensor *from = single_layer(h, "llmc.lora", i, t[i].name, l, n, e);
            ok = from != NULL;
            if (ok) safetensors_floats(from, 0, host + t[i].offset - first + (size_t)l * n, n);
        }
    if (ok && m->config.lora.rank) model_put_weights(m, o, first, host, count);
    else if (ok) model_merge_lora(m, o, &config, t, host);
    free(host);
    return ok;
}

/* Reads the moments, and the masters, of a training state in a single file. */
static inline bool model_read_state(const Huggingface *h, const Model *m, const Optimizer *o, Error *e) {
    if (!h->trainer) return true;
    return model_read_layers(h, m, o, "llmc.adam1", o->m, e) && model_read_layers(h, m, o, "llmc.adam2", o->v, e) &&
           (!single_has(h, "llmc.master") || model_read_layers(h, m, o, "llmc.master", o->master, e));
}

/* model_load_as() for a folder or a single file, which has been opened. Closes it. */
static inline bool model_load_opened(Model *m, ModelFile *f, Huggingface *h, const ModelLoad *how, const Backend *b,
                                     Device *d, Optimizer *o, Error *e) {
    ModelConfig config = h->config;
    bool ok = true;
    if (h->headless && !how->value_head)
        ok = error_set(e, "%s: is a reward model without lm_head.weight, which cannot be used as a language model",
                       h->path);
    ok = ok && model_make(m, &config, how, b, d, e) && (!how->gradients || model_new_grads(m, e)) &&
         (!o || optimizer_new(o, m, e));
    if (ok) {
        model_read_parts(h, m, o);
        if (how->value_head && !h->config.value_head) model_new_head(m, o, how->seed);
        ok = model_load_lora(m, o, how, e) && model_read_adapters(h, m, o, e) && (!o || model_read_state(h, m, o, e)) &&
             model_take_texts(h, f, e);
    }
    huggingface_close(h);
    return ok;
}

/* model_load_as() for a new model. */
static inline bool model_load_new(Model *m, const char *spec, ModelConfig *config, const ModelLoad *how,
                                  const Backend *b, Device *d, Optimizer *o, Error *e) {
    if (!model_config_check(config, how->shape ? "model shape" : spec, e) || !model_make(m, config, how, b, d, e))
        return false;
    if (how->gradients && !model_new_grads(m, e)) return false;
    model_init(m, how->seed);
    return (!o || optimizer_new(o, m, e)) && (!how->adapter || model_load_lora(m, o, how, e));
}

/* model_load_as() for a checkpoint, whose reader is at the start of the file. Memory is allocated as the file is read: a
 * truncated file fails before the rest is allocated. Masters get the weights in full precision, so they are created
 * before the weights are read. */
static inline bool model_load_checkpoint(Model *m, ModelFile *f, CheckpointReader *r, const ModelLoad *how,
                                         const Backend *b, Device *d, Optimizer *o, Error *e) {
    bool head = false, ok = checkpoint_start(r, e);
    if (ok) {
        ModelConfig config = r->config;
        const bool masters = o && b->weight_size < sizeof(float);
        ok = model_make(m, &config, how, b, d, e) && (!masters || optimizer_new(o, m, e)) &&
             model_read_weights(r, m, o, e) && (!how->gradients || model_new_grads(m, e)) &&
             (!o || masters || optimizer_new(o, m, e)) && model_load_lora(m, o, how, e) &&
             model_read_sections(r, m, f, o, &head, e);
        if (ok && how->value_head && !head) model_new_head(m, o, how->seed);
        f->hash = reader_hash(&r->in);
        f->head = head;
    }
    checkpoint_close(r);
    return ok;
}

/* model_load_as() for a file or a folder. */
static inline bool model_load_path(Model *m, ModelFile *f, const char *path, const ModelLoad *how, const Backend *b,
                                   Device *d, Optimizer *o, Error *e) {
    Huggingface h;
    CheckpointReader r;
    bool single = false;
    if (huggingface_is_folder(path))
        return huggingface_open(&h, path, e) && model_load_opened(m, f, &h, how, b, d, o, e);
    if (!reader_open(&r.in, path, e)) return false;
    if (!single_begins(&r.in, &single, e)) {
        reader_close(&r.in);
        return false;
    }
    if (single) return single_open(&h, path, &r.in, e) && model_load_opened(m, f, &h, how, b, d, o, e);
    return model_load_checkpoint(m, f, &r, how, b, d, o, e);
}

/* What an output folder or single file is made of. */
static inline HuggingfaceOutput model_output(const ModelFile *f, SafetensorsType type) {
    const HuggingfaceOutput out = {.source = f->source,
                                   .type = type,
                                   .tokenizer = f->tokenizer,
                                   .tokenizer_bytes = f->tokenizer_bytes,
                                   .chat_template = f->chat_template,
                                   .lineage = f->lineage,
                                   .reward = f->reward,
                                   .stops = f->stops};
    return out;
}

/* model_save() for a folder. type: of the tensors; SAFETENSORS_TYPE_COUNT: those of the input, float32 for others. */
static inline bool model_save_folder(const Model *m, const ModelFile *f, const char *path, SafetensorsType type,
                                     Error *e) {
    const HuggingfaceOutput out = model_output(f, type);
    return huggingface_save(m, &out, path, e);
}

/* Whether model_save() writes a single safetensors file: its name asks for one, or llm.c's format cannot hold the
 * family or what an output folder needs. */
static inline bool model_saves_single(const Model *m, const ModelFile *f, const char *path) {
    if (single_is_output(path)) return true;
    if (huggingface_ends(path, ".bin") || huggingface_ends(path, ".bin.zst")) return false;
    return m->config.family != FAMILY_GPT2 || f->source;
}

/* ---- loading and saving ------------------------------------------------------------------------------------------ */

/* Loads `spec`: a folder (huggingface.h), a checkpoint ("-" is standard input), or a descriptor such as d12 for a model
 * with random weights; NULL if how->shape is given. o: an optimizer to create and to fill from a training state's
 * moments, or NULL. On failure nothing is left allocated. */
static inline bool model_load_as(Model *m, ModelFile *f, const char *spec, const ModelLoad *how, const Backend *b,
                                 Device *d, Optimizer *o, Error *e) {
    ModelConfig config;
    bool ok = true;
    *f = (ModelFile){.lineage = json_array()};
    *m = (Model){0};
    if (o) *o = (Optimizer){0};
    if (how->shape || gpt2_config_descriptor(spec, &config, &ok, e)) {
        if (how->shape) config = *how->shape;
        ok = ok && model_load_new(m, spec, &config, how, b, d, o, e);
    } else ok = model_load_path(m, f, spec, how, b, d, o, e);
    if (ok) return true;
    if (o) optimizer_free(o, m);
    if (m->backend) model_free(m);
    model_file_free(f);
    return false;
}

/* The same for a single rank, without adapters. */
static inline bool model_load(Model *m, ModelFile *f, const char *spec, const ModelConfig *shape, bool value_head,
                              const Backend *b, Device *d, bool gradients, uint64_t seed, Optimizer *o, Error *e) {
    const ModelLoad how = {.shape = shape, .value_head = value_head, .gradients = gradients, .seed = seed};
    return model_load_as(m, f, spec, &how, b, d, o, e);
}

static inline bool model_put_floats(CheckpointWriter *w, const Model *m, const Floats *from, size_t count, Error *e) {
    ModelChunk c = {0};
    bool ok = true;
    while (ok && model_each_chunk(&c, count)) {
        m->backend->download(m->device, c.host, floats_at(from, c.at), c.n * sizeof *c.host);
        ok = checkpoint_put(w, c.host, c.n * sizeof *c.host, e);
    }
    free(c.host);
    return ok;
}

/* Writes a whole sharded array. Each layer in turn is gathered into the memory of its gradients, which are zero between
 * steps. All ranks call this at the same time; w is NULL on ranks that do not write. */
static inline bool model_collect(CheckpointWriter *w, const Model *m, const Optimizer *o, const Floats *array,
                                 Error *e) {
    bool ok = true;
    for (int i = 0; ok && i < TENSOR_COUNT; i++)
        for (int l = 0; ok && l < (tensor_trained(&m->tensor[i]) ? (int)m->tensor[i].layers : 0); l++) {
            ok = o->collect(o->collect_context, array, i, l, e);
            if (ok && w) ok = model_put_floats(w, m, model_grad(m, i, l), m->tensor[i].rows * m->tensor[i].columns, e);
        }
    model_zero_grads(m);
    return ok;
}

/* Writes m, v or the master weights. */
static inline bool model_put_moments(CheckpointWriter *w, const Model *m, const Optimizer *o, const char *tag,
                                     const Floats *from, Error *e) {
    const size_t count = model_trained_count(m);
    if (!checkpoint_begin_section(w, tag, count * sizeof(float), e)) return false;
    if (!o->sharded) return model_put_floats(w, m, from, count, e);
    return model_collect(w, m, o, from, e);
}

static inline bool model_put_text(CheckpointWriter *w, const char *tag, const void *text, size_t bytes, Error *e) {
    return !text || (checkpoint_begin_section(w, tag, bytes, e) && checkpoint_put(w, text, bytes, e));
}

/* Writes the adapters of a training state. */
static inline bool model_put_lora(CheckpointWriter *w, const Model *m, Error *e) {
    const LoraConfig *lora = &m->config.lora;
    const size_t first = m->tensor[FIRST_LORA_TENSOR].offset, count = m->parameters - first;
    if (!lora->rank) return true;
    bool ok = checkpoint_begin_section(w, "LORA", sizeof *lora + count * sizeof(float), e) &&
              checkpoint_put(w, lora, sizeof *lora, e);
    ModelChunk c = {0};
    while (ok && model_each_chunk(&c, count)) {
        model_download(m, first + c.at, c.host, c.n);
        ok = checkpoint_put(w, c.host, c.n * sizeof *c.host, e);
    }
    free(c.host);
    return ok;
}

/* Called instead of model_save() on the ranks that do not write a training state: takes part in its collective
 * calls. */
static inline bool model_save_beside(const Model *m, const Optimizer *o, Error *e) {
    return !o->sharded || (model_collect(NULL, m, o, o->m, e) && model_collect(NULL, m, o, o->v, e) &&
                           (!o->master || model_collect(NULL, m, o, o->master, e)));
}

/* Writes a folder if `path` is one (huggingface_save.h), else a checkpoint, or a training state if an optimizer and the
 * trainer's counters (JSON text) are given. bf16: writes bfloat16 (llm.c's version 5), else float32; in a folder, else
 * the types of the input. The file or folder appears under `path` only when all of it is on disk. */
static inline bool model_save(const Model *m, const ModelFile *f, const char *path, bool bf16, const Optimizer *o,
                              const char *trainer, Error *e) {
    CheckpointWriter w;
    if (huggingface_is_output(path)) {
        if (o) return error_set(e, "%s: is a folder, expected the file of a training state", path);
        return model_save_folder(m, f, path, bf16 ? SAFETENSORS_BF16 : SAFETENSORS_TYPE_COUNT, e);
    }
    if (model_saves_single(m, f, path)) {
        const HuggingfaceOutput out = model_output(f, bf16 ? SAFETENSORS_BF16 : SAFETENSORS_TYPE_COUNT);
        return single_save(m, &out, path, o, trainer, e);
    }
    if (!checkpoint_create(&w, path, &m->config, bf16, e)) return false;
    ModelChunk c = {0};
    bool ok = true;
    while (ok && model_each_chunk(&c, gpt2_file_elements(&m->config))) {
        if (o) model_download(m, c.at, c.host, c.n);
        else lora_merged(m, c.at, c.host, c.n);
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
    if (o)
        ok = ok && model_put_lora(&w, m, e) && model_put_moments(&w, m, o, "ADM1", o->m, e) &&
             model_put_moments(&w, m, o, "ADM2", o->v, e) &&
             (!o->master || model_put_moments(&w, m, o, "MSTR", o->master, e));
    ok = ok && model_put_text(&w, "TRNS", trainer, trainer ? strlen(trainer) : 0, e);
    if (ok && checkpoint_commit(&w, e)) return true;
    if (!ok) checkpoint_abort(&w);
    return false;
}

/* Returns the hash of a model's weights without a value head: XXH3-64 of their float32 values. A model and the file it
 * was saved to have the same hash. */
static inline uint64_t model_weights_hash(const Model *m) {
    XXH3_state_t *state = (XXH3_state_t *)checked_object(XXH3_createState(), "the state of a hash");
    XXH3_64bits_reset(state);
    for (ModelChunk c = {0}; model_each_chunk(&c, gpt2_file_elements(&m->config));) {
        model_download(m, c.at, c.host, c.n);
        XXH3_64bits_update(state, c.host, c.n * sizeof *c.host);
    }
    const uint64_t hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

#endif
