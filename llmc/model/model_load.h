/* model_load.h - what a model has besides its weights, and the steps of loading that all file formats share.
 *
 * A reader of a format makes the model (model_make), hands its weights to model_put_weights(), which also gives an
 * optimizer its master weights, then adds what the file lacks: a value head, adapters.
 */
#ifndef LLMC_MODEL_MODEL_LOAD_H
#define LLMC_MODEL_MODEL_LOAD_H

#include "../base/error.h" /* Error, error_set, xcalloc, xmalloc, ... */
#include "../base/io.h"    /* XXH3_state_t, XXH3_64bits_digest, XXH3_64bits_reset, XXH3_64bits_update, ... */
#include "../base/text.h"  /* TokenList, token_list_free */
#include "backend.h"       /* Backend, Device, QuantMatrix, Floats, ... */
#include "config.h"        /* ModelConfig, LoraConfig, LoraParts, lora_parts, ... */
#include "huggingface.h"   /* HuggingfaceSource, huggingface_source_free */
#include "lora.h"          /* lora_add, lora_check_targets */
#include "model.h"         /* Model, model_download, model_init_tensor, model_new_grads, ... */
#include "optimizer.h"     /* Optimizer, optimizer_new, Slice, slice_offset */
#include "peft.h"          /* Peft, peft_close, peft_open, peft_read */
#include "share.h"         /* Share */
#include "tensors.h"       /* TensorInfo, FIRST_LORA_TENSOR, TENSOR_COUNT, TENSOR_valuew, ... */
#include "transformer.h"   /* LinearInfo, LINEAR_COUNT, model_linear, model_refresh_dora */

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
    void *gguf;                /* entries of the GGUF file that was read, for a GGUF output (model_gguf.h), or NULL */
    size_t gguf_bytes;
    char *note; /* a warning for the user, or NULL */
} ModelFile;

static inline void model_file_free(ModelFile *f) {
    free(f->tokenizer), free(f->chat_template), free(f->trainer), free(f->reward), json_decref(f->lineage);
    huggingface_source_free(f->source), token_list_free(&f->stops), free(f->note), free(f->gguf);
    *f = (ModelFile){0};
}

/* How the matrices that are not trained are stored, in the order of --quantize: as weights; in the types of a folder or a GGUF
 * file; in blocks of Q8_0 or Q4_0, which are made while the model is loaded (quant_plan()). */
typedef enum { QUANTIZE_NONE, QUANTIZE_KEEP, QUANTIZE_Q8_0, QUANTIZE_Q4_0 } Quantize;
#define QUANTIZE_CHOICES "none|keep|q8_0|q4_0"

/* What model_load_as() makes of a file. */
typedef struct ModelLoad {
    const ModelConfig *shape; /* NULL, or a new model of this shape is created instead of reading a file */
    bool value_head;          /* the model has a value head; it gets a new one if the file has none */
    bool gradients;           /* the model will be trained */
    LoraConfig lora;          /* adapters that the model gets; new ones unless a file has them */
    const char *adapter;      /* NULL, or a folder of peft: a trained or quantised model gets its adapters, any other
                                 model has their sum in its weights */
    Quantize quantize;        /* of a model that is trained by adapters, or not at all */
    const char *resume;       /* NULL, or a training state to continue from (model_state.h) */
    uint64_t seed;            /* of new weights */
    Share share;              /* this rank's share of gradients and moments; ranks 0: a single rank */
} ModelLoad;

/* ---- weights ----------------------------------------------------------------------------------------------------- */

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

/* Whether all n values are finite. All threads read them once, as fast as memory is. */
static inline bool weights_finite(const float *values, size_t n) {
    int infinite = 0; /* a value with all bits of the exponent is infinite or NaN */
#pragma omp parallel for simd schedule(static) reduction(| : infinite) if (parallel : n > 1 << 16)
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        infinite |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !infinite;
}

/* Checks weights [at, at + n) of the file `name`: one that is NaN or infinite makes every result NaN. */
static inline bool model_check_weights(const Model *m, const char *name, size_t at, const float *host, size_t n,
                                       Error *e) {
    if (weights_finite(host, n)) return true;
    while (isfinite(*host)) host++, at++;
    for (int i = 0; i < TENSOR_COUNT; i++) {
        const TensorInfo *t = &m->tensor[i];
        if (at < t->offset || at >= t->offset + t->size) continue;
        const size_t layer = (at - t->offset) / (t->rows * t->columns);
        return error_set(e, "%s: the weight %s of layer %zu has the value %g, expected a finite number", name, t->name,
                         layer, (double)*host);
    }
    return error_set(e, "%s: a weight has the value %g, expected a finite number", name, (double)*host);
}

/* Uploads weights [at, at + n), also in full precision to the optimizer's masters if it has any. */
static inline void model_put_weights(const Model *m, const Optimizer *o, size_t at, const float *host, size_t n) {
    model_upload(m, at, host, n);
    if (o && o->master) model_put_slices(m, o, o->master, at, host, n);
}

/* Initialises the value head of a model whose file has none. */
static inline void model_new_head(const Model *m, const Optimizer *o, uint64_t seed) {
    const size_t n = (size_t)m->config.width + 1;
    float *host = (float *)xcalloc(n, sizeof *host);
    model_init_tensor(&m->config, TENSOR_valuew, &m->tensor[TENSOR_valuew], seed, host);
    model_put_weights(m, o, m->tensor[TENSOR_valuew].offset, host, n);
    free(host);
}

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

/* ---- models and adapters ----------------------------------------------------------------------------------------- */

/* Sets the adapters of a configuration. */
static inline bool model_set_lora(ModelConfig *c, const ModelLoad *how, Error *e) {
    c->lora = how->lora;
    if (how->adapter && (how->gradients || how->quantize)) {
        Peft p;
        if (!peft_open(&p, how->adapter, c, &c->lora, e)) return false;
        peft_close(&p);
    }
    return lora_check_targets(c, e);
}

/* Allocates a model of configuration c with what `how` adds. plan: the matrices that a file has in blocks, in new memory,
 * which is taken over; or NULL. */
static inline bool model_make(Model *m, ModelConfig *c, const ModelLoad *how, QuantMatrix *plan, const Backend *b,
                              Device *d, Error *e) {
    const Share alone = {.ranks = 1};
    c->value_head = how->value_head;
    bool ok = model_set_lora(c, how, e);
    assert(!how->gradients || !ok || c->lora.rank || !how->quantize);
    if (ok && how->quantize == QUANTIZE_KEEP && !plan)
        ok = error_set(e, "--quantize keep: the model is neither a folder nor a GGUF file; use q8_0 or q4_0");
    else if (ok && how->quantize > QUANTIZE_KEEP) {
        plan = quant_plan(c, how->quantize == QUANTIZE_Q8_0 ? QUANT_Q8_0 : QUANT_Q4_0, e);
        ok = plan != NULL;
    }
    if (!ok) {
        free(plan);
        return false;
    }
    ok = model_new_quantized(m, c, plan, NULL, b, d, e);
    m->share = how->share.ranks ? how->share : alone;
    return ok;
}

/* Gives those rows of a matrix that have an adapter the lengths magnitude[lora_outer()] of DoRA. weights: the matrix with
 * the adapters added. */
static inline void model_scale_rows(const ModelConfig *c, const LinearInfo *i, const TensorInfo *matrix,
                                    const float *magnitude, float *weights) {
    const LoraParts p = lora_parts(c, i->projections);
    for (int part = 0, at = 0; part < p.parts; at += p.count[part++])
        for (int r = 0; r < p.count[part]; r++) {
            float *row = weights + (size_t)(p.first[part] + r) * matrix->columns;
            double sum = 0;
            for (size_t j = 0; j < matrix->columns; j++) sum += (double)row[j] * row[j];
            const float factor = magnitude[at + r] / (sum > 0 ? (float)sqrt(sum) : 1.0f);
            for (size_t j = 0; j < matrix->columns; j++) row[j] *= factor;
        }
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
                     host + b->offset - t[FIRST_LORA_TENSOR].offset + l * b->rows * b->columns, NULL, at, weights,
                     size);
            if (c->lora.dora) {
                const float *magnitude = host + t[i->dora_m].offset - t[FIRST_LORA_TENSOR].offset + l * b->rows;
                model_scale_rows(c, i, matrix, magnitude, weights);
            }
            model_put_weights(m, o, at, weights, size);
        }
        free(weights);
    }
}

/* Sets the magnitudes of DoRA to the lengths of the rows, so that new adapters, whose b is 0, change nothing. */
static inline void model_start_dora(const Model *m, const Optimizer *o) {
    if (!m->dora) return;
    const size_t first = m->tensor[FIRST_DORA_TENSOR].offset, n = m->parameters - first;
    float *norm = (float *)xmalloc((n + 1) * sizeof *norm);
    model_refresh_dora(m);
    m->backend->download(m->device, norm, m->dora->norm, n * sizeof *norm);
    model_put_weights(m, o, first, norm, n);
    free(norm);
}

typedef struct ModelPut {
    const Model *m;
    const Optimizer *o;
    float *host; /* NULL: values are the model's; else they are stored from element `first` on */
    size_t first;
    bool infinite; /* a value was not finite */
} ModelPut;

/* peft_read()'s put. */
static inline void model_put_adapter(void *context, size_t at, const float *values, size_t n) {
    ModelPut *to = (ModelPut *)context;
    to->infinite |= !weights_finite(values, n);
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
    if (!how->adapter) {
        model_start_dora(m, o);
        return true;
    }
    Peft p;
    TensorInfo t[TENSOR_COUNT];
    LoraConfig lora;
    if (!peft_open(&p, how->adapter, &m->config, &lora, e)) return false;
    ModelPut put = {.m = m, .o = o};
    if (!m->config.lora.rank) {
        const size_t all = model_tensors(&p.config, t);
        put.first = t[FIRST_LORA_TENSOR].offset;
        put.host = (float *)xcalloc(all - put.first, sizeof *put.host);
    }
    peft_read(&p, model_put_adapter, &put);
    if (put.host) model_merge_lora(m, o, &p.config, t, put.host);
    free(put.host);
    peft_close(&p);
    return !put.infinite ||
           error_set(e, "%s: a weight of the adapters is NaN or infinite, expected finite numbers", how->adapter);
}

/* Makes model m of configuration c for a file that is read as a whole, and its optimizer if o is not NULL. plan: see
 * model_make(). */
static inline bool model_make_all(Model *m, ModelConfig *c, const ModelLoad *how, QuantMatrix *plan, const Backend *b,
                                  Device *d, Optimizer *o, Error *e) {
    return model_make(m, c, how, plan, b, d, e) && (!how->gradients || model_new_grads(m, e)) &&
           (!o || optimizer_new(o, m, e));
}

/* model_load_as() for a new model. */
static inline bool model_load_new(Model *m, const char *spec, ModelConfig *config, const ModelLoad *how,
                                  const Backend *b, Device *d, Optimizer *o, Error *e) {
    if (!model_config_check(config, how->shape ? "model shape" : spec, e) || !model_make(m, config, how, NULL, b, d, e))
        return false;
    if (how->gradients && !model_new_grads(m, e)) return false;
    model_init(m, how->seed);
    if (!how->adapter) model_start_dora(m, NULL);
    return (!o || optimizer_new(o, m, e)) && (!how->adapter || model_load_lora(m, o, how, e));
}

/* Returns the XXH3-64 of the float32 values of the first n elements of all tensors. */
static inline uint64_t model_hash(const Model *m, size_t n) {
    XXH3_state_t *state = (XXH3_state_t *)checked_object(XXH3_createState(), "the state of a hash");
    XXH3_64bits_reset(state);
    for (ModelChunk c = {0}; model_each_chunk(&c, n);) {
        model_download(m, c.at, c.host, c.n);
        XXH3_64bits_update(state, c.host, c.n * sizeof *c.host);
    }
    const uint64_t hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

/* The hash of a model's weights without a value head and adapters. A model and the file it was saved to have the same. */
static inline uint64_t model_weights_hash(const Model *m) { return model_hash(m, gpt2_file_elements(&m->config)); }

#endif
