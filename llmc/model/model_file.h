/* model_file.h - loading and saving models: weights, tokenizer, chat template, lineage and training state.
 *
 * A checkpoint is llm.c's file with a trailer (checkpoint.h). The trailer holds the tokenizer, the chat template, the
 * value head, the kind and normalisation of a reward model (reward_model.h), and the lineage: a JSON array with one
 * entry per training stage of the model (stage, parent's hash, options). A training state is a checkpoint that also
 * holds Adam's moments and the trainer's counters: `generate -c run.state` works, and `--resume run.state` continues
 * bit for bit. If the device keeps bf16 weights and float32 master weights (--device cuda --dtype bf16), the weights in
 * the file are those that the model computed with, and a training state also holds the masters (MSTR).
 *
 *     ModelFile f;
 *     model_load(&model, &f, "sft.bin", NULL, false, backend, device, true, seed, NULL, &e);
 *     model_save(&model, &f, "out.bin", false, NULL, NULL, &e);
 */
#ifndef LLMC_MODEL_MODEL_FILE_H
#define LLMC_MODEL_MODEL_FILE_H

#include "../base/error.h" /* Error, error_set, xmalloc, checked_object, ... */
#include "../base/io.h"    /* XXH3_state_t, XXH3_64bits_digest, XXH3_64bits_reset, XXH3_64bits_update, ... */
#include "backend.h"       /* Floats, Backend, Device, floats_at */
#include "checkpoint.h"    /* CheckpointReader, CheckpointWriter, checkpoint_payload, checkpoint_put, ... */
#include "config.h"        /* ModelConfig, LoraConfig, model_config_check, gpt2_config_descriptor */
#include "lora.h"          /* model_trained_count, lora_add, lora_merged, model_trained_first */
#include "model.h"         /* Model, ModelChunk, model_each_chunk, model_download, ... */
#include "optimizer.h"     /* Optimizer, optimizer_new, Slice, optimizer_free, ... */
#include "share.h"         /* Share */
#include "tensors.h"       /* FIRST_LORA_TENSOR, TENSOR_valuew, TensorInfo, TENSOR_COUNT, ... */
#include "transformer.h"   /* LINEAR_COUNT, LinearInfo, model_linear */
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
} ModelFile;

enum { MODEL_TEXT_LIMIT = 64 << 20 }; /* bytes of a text section */

static inline void model_file_free(ModelFile *f) {
    free(f->tokenizer), free(f->chat_template), free(f->trainer), free(f->reward), json_decref(f->lineage);
    *f = (ModelFile){0};
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

/* Reads the adapters of a training state. A model without adapters gets their sum with its weights. */
static inline bool model_read_lora(CheckpointReader *r, Model *m, const Optimizer *o, uint64_t bytes, Error *e) {
    LoraConfig lora;
    if (bytes < sizeof lora || !checkpoint_payload(r, &lora, sizeof lora, "adapters", e))
        return error_set(e, "%s: adapters of %llu bytes", r->in.name, (unsigned long long)bytes);
    if (m->config.lora.rank && memcmp(&lora, &m->config.lora, sizeof lora))
        return error_set(e, "%s: its adapters have rank %d, targets %d and scale %g, expected %d, %d and %g",
                         r->in.name, lora.rank, lora.targets, (double)lora.scale, m->config.lora.rank,
                         m->config.lora.targets, (double)m->config.lora.scale);
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

/* Gives the adapters their initial values, with which they change nothing. */
static inline void model_init_lora(const Model *m, const Optimizer *o, uint64_t seed) {
    for (int i = FIRST_LORA_TENSOR; i < TENSOR_COUNT; i++) {
        const TensorInfo *t = &m->tensor[i];
        if (!t->size) continue;
        float *host = (float *)xmalloc(t->size * sizeof *host);
        model_init_tensor(&m->config, i, t, seed, host);
        model_put_weights(m, o, t->offset, host, t->size);
        free(host);
    }
}

/* Loads `spec`: a checkpoint ("-" is standard input), or a descriptor such as d12 for a model with random weights from
 * `seed`. If `shape` is not NULL, creates a new model of that shape instead (spec may then be NULL). value_head:
 * whether the model has a value head; it gets a new one if the file has none. lora: adapters that the model gets, new
 * ones unless the file has them, or NULL. gradients: the model will be trained. o: an optimizer to create and to fill
 * from a training state's moments, or NULL. share: this rank's share of the gradients and moments. On failure nothing
 * is left allocated. */
static inline bool model_load_share(Model *m, ModelFile *f, const char *spec, const ModelConfig *shape, bool value_head,
                                    const LoraConfig *lora, const Backend *b, Device *d, bool gradients, uint64_t seed,
                                    Optimizer *o, Share share, Error *e) {
    ModelConfig config;
    bool ok = true;
    *f = (ModelFile){.lineage = json_array()};
    *m = (Model){0};
    if (o) *o = (Optimizer){0};
    if (shape || gpt2_config_descriptor(spec, &config, &ok, e)) {
        if (shape) config = *shape;
        config.value_head = value_head;
        if (lora) config.lora = *lora;
        ok =
            ok && model_config_check(&config, shape ? "model shape" : spec, e) && model_new(m, &config, b, d, false, e);
        m->share = share;
        if (ok && gradients) ok = model_new_grads(m, e);
        if (ok) model_init(m, seed);
        if (ok && o) ok = optimizer_new(o, m, e);
    } else {
        CheckpointReader r;
        bool head = false;
        if (!checkpoint_open(&r, spec, e)) ok = false;
        else {
            config = r.config;
            config.value_head = value_head;
            if (lora) config.lora = *lora;
            /* memory is allocated as the file is read: a truncated file fails before the rest is allocated */
            ok = model_new(m, &config, b, d, false, e);
            m->share = share;
            /* masters get the weights in full precision, so they are created before the weights are read */
            const bool masters = o && b->weight_size < sizeof(float);
            ok = ok && (!masters || optimizer_new(o, m, e)) && model_read_weights(&r, m, o, e) &&
                 (!gradients || model_new_grads(m, e)) && (!o || masters || optimizer_new(o, m, e));
            if (ok) model_init_lora(m, o, seed);
            if (ok) ok = model_read_sections(&r, m, f, o, &head, e);
            if (ok && value_head && !head) {
                float *host = (float *)xcalloc((size_t)config.width + 1, sizeof *host);
                model_init_tensor(&config, TENSOR_valuew, &m->tensor[TENSOR_valuew], seed, host);
                model_put_weights(m, o, m->tensor[TENSOR_valuew].offset, host, (size_t)config.width + 1);
                free(host);
            }
            f->hash = reader_hash(&r.in);
            f->head = head;
            checkpoint_close(&r);
        }
    }
    if (ok) return true;
    if (o) optimizer_free(o, m);
    if (m->backend) model_free(m);
    model_file_free(f);
    return false;
}

/* The same for a single rank. */
static inline bool model_load(Model *m, ModelFile *f, const char *spec, const ModelConfig *shape, bool value_head,
                              const Backend *b, Device *d, bool gradients, uint64_t seed, Optimizer *o, Error *e) {
    const Share alone = {.ranks = 1};
    return model_load_share(m, f, spec, shape, value_head, NULL, b, d, gradients, seed, o, alone, e);
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

/* Writes a checkpoint, or a training state if an optimizer and the trainer's counters (JSON text) are given. bf16:
 * writes llm.c's version 5. The file appears under `path` only when all of it is on disk. */
static inline bool model_save(const Model *m, const ModelFile *f, const char *path, bool bf16, const Optimizer *o,
                              const char *trainer, Error *e) {
    CheckpointWriter w;
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
