/* divergence.h - two models on the same targets: the divergence of their distributions of the next token, and the student's
 * gradient.
 *
 *     Model teacher;
 *     Workspace read;                                                          // of the teacher
 *     DivergenceOutput apart = {.value = value};
 *     ModelDivergence d = {.teacher = &teacher, .work = &read, .kind = TOKEN_REVERSE_KL, .temperature = 1};
 *     model_divergence(&model, &work, &batch, &d, NULL, 1.0f, &out, &apart);                // value[R], ...
 *     model_divergence_backward(&model, &work, &batch, &d, 1.0f, weight, dlogp, NULL);      // of sum_r weight_r value_r
 *
 * If the weights are known in advance, model_divergence_both() computes the heads of both models once instead of twice. The
 * teacher's vocabulary is the student's; its shape may be another one. It can read another batch, whose targets are the same
 * tokens in the same order after other prompts.
 *
 * Instead of a model, the teacher can be lists of its likeliest tokens at the targets, with the rest as one outcome
 * (TokenDivergence in backend.h):
 *
 *     TeacherLists lists;
 *     if (!teacher_lists_new(&lists, &model, rows, 64, vocab, &e)) return false;
 *     ModelDivergence d = {.lists = &lists, .kind = TOKEN_FORWARD_KL, .temperature = 1};
 *     // for each batch: fill in lists.token, lists.logp and lists.rest of its targets, then call the functions above
 *     teacher_lists_free(&lists, &model);
 */
#ifndef LLMC_MODEL_DIVERGENCE_H
#define LLMC_MODEL_DIVERGENCE_H

#include "../base/error.h" /* xcalloc, Error */
#include "backend.h"       /* TokenDivergence, Floats, floats_at, Backend, ... */
#include "batch.h"         /* Batch */
#include "config.h"        /* ModelConfig */
#include "model.h"         /* Model, model_output_blocks, model_output_weights */
#include "transformer.h"   /* ModelOutput, model_forward, model_trunk_backward, model_head, ... */
#include "workspace.h"     /* work_floats, Workspace, WORK_argmax, WORK_dentropy, ... */
#include <assert.h>

/* The names of TokenDivergenceKind, for an option. */
#define TOKEN_DIVERGENCE_CHOICES "forward_kl|reverse_kl|jsd|tvd|skew_forward|skew_reverse"

/* The distributions of a teacher at the targets of a batch, as lists. */
typedef struct TeacherLists {
    int rows, count; /* targets of the largest batch; tokens of a list */
    int32_t vocab;   /* the teacher's */
    int32_t *token;  /* (rows, count) on the host, different tokens of a target */
    float *logp;     /* (rows, count) on the host, their log-probabilities */
    float *rest;     /* (rows) on the host, the log of the probability of all others */
    Floats *device;  /* the same on the device, and the values of the targets */
} TeacherLists;

typedef struct ModelDivergence {
    const Model *teacher;      /* or NULL: lists */
    const Workspace *work;     /* of the teacher, for inference */
    const TeacherLists *lists; /* or NULL: teacher */
    TokenDivergenceKind kind;
    float temperature, beta; /* of both distributions; see TokenDivergence */
} ModelDivergence;

/* Results on the host, (R) each; NULL: not wanted. */
typedef struct DivergenceOutput {
    float *value, *forward_kl, *reverse_kl;
    float *logp, *entropy; /* of the teacher, at the divergence's temperature; NULL with lists */
    int32_t *argmax;       /* of the teacher; NULL with lists */
} DivergenceOutput;

/* The values of the targets that are kept on the device in the teacher's workspace, or next to its lists. */
typedef enum {
    DIVERGENCE_VALUE,
    DIVERGENCE_FORWARD,
    DIVERGENCE_REVERSE,
    DIVERGENCE_WEIGHT,
    DIVERGENCE_ITEMS
} DivergenceItem;

static inline Floats *divergence_item(const ModelDivergence *d, DivergenceItem item) {
    if (d->lists) return floats_at(d->lists->device, (size_t)item * (size_t)d->lists->rows);
    return floats_at(work_floats(d->work, WORK_divergence, 0), (size_t)item * (size_t)d->work->targets);
}

/* The parts of the lists on the device, after the values of the targets: rest, logp, token. */
static inline Floats *teacher_lists_rest(const TeacherLists *l) {
    return floats_at(l->device, DIVERGENCE_ITEMS * (size_t)l->rows);
}
static inline Floats *teacher_lists_logp(const TeacherLists *l) {
    return floats_at(teacher_lists_rest(l), (size_t)l->rows);
}
static inline Ints *teacher_lists_token(const TeacherLists *l) {
    return (Ints *)floats_at(teacher_lists_logp(l), (size_t)l->rows * (size_t)l->count);
}

/* Bytes on the device. rows: targets of the largest batch; count: tokens of a list. */
static inline size_t teacher_lists_bytes(int rows, int count) {
    return (size_t)rows * (DIVERGENCE_ITEMS + 1 + 2 * (size_t)count) * sizeof(float);
}

/* Allocates lists for batches of a model. vocab: the teacher's. */
static inline bool teacher_lists_new(TeacherLists *l, const Model *m, int rows, int count, int32_t vocab, Error *e) {
    const size_t n = (size_t)rows * (size_t)count;
    *l = (TeacherLists){.rows = rows, .count = count, .vocab = vocab};
    l->device = (Floats *)m->backend->alloc_zeroed(m->device, teacher_lists_bytes(rows, count), "a teacher's lists", e);
    if (!l->device) return false;
    l->token = (int32_t *)xcalloc(n, sizeof *l->token);
    l->logp = (float *)xcalloc(n, sizeof *l->logp);
    l->rest = (float *)xcalloc((size_t)rows, sizeof *l->rest);
    return true;
}

static inline void teacher_lists_free(TeacherLists *l, const Model *m) {
    if (l->device) m->backend->release(m->device, l->device);
    free(l->token), free(l->logp), free(l->rest);
    *l = (TeacherLists){0};
}

/* Copies the lists of R targets to the device. */
static inline void teacher_lists_upload(const TeacherLists *l, const Model *m, size_t R) {
    const Backend *b = m->backend;
    const size_t n = R * (size_t)l->count;
    b->upload(m->device, teacher_lists_rest(l), l->rest, R * sizeof *l->rest);
    b->upload(m->device, teacher_lists_logp(l), l->logp, n * sizeof *l->logp);
    b->upload(m->device, teacher_lists_token(l), l->token, n * sizeof *l->token);
}

/* Sets the teacher's side of the operation. */
static inline void divergence_teacher(TokenDivergence *a, const ModelDivergence *d) {
    const ModelConfig *c = &d->teacher->config;
    a->channels = c->width;
    a->padded_vocab = c->padded_vocab;
    a->cap = c->logit_cap;
    a->h = work_acts(d->work, WORK_h, 0);
    a->output = model_output_weights(d->teacher);
    a->matrix = model_output_blocks(d->teacher);
    a->logp = work_floats(d->work, WORK_logp, 0);
    if (c->vocab < a->head.vocab) a->head.vocab = c->vocab; /* tokens that only one model has are padding */
}

/* The same for lists; the teacher's logits that are made of them take as much memory as the student's. */
static inline void divergence_lists(TokenDivergence *a, const TeacherLists *l) {
    a->padded_vocab = a->head.padded_vocab;
    a->listed = l->count;
    a->list = teacher_lists_token(l);
    a->list_logp = teacher_lists_logp(l);
    a->rest_logp = teacher_lists_rest(l);
    if (l->vocab < a->head.vocab) a->head.vocab = l->vocab;
}

/* The operation on the batch's targets, without gradients. Both models' trunks have run. */
static inline TokenDivergence divergence_of(const Model *m, const Workspace *w, const Batch *batch,
                                            const ModelDivergence *d, float temperature) {
    TokenDivergence a = {.head = model_head(m, w, batch, temperature),
                         .kind = d->kind,
                         .temperature = d->temperature,
                         .beta = d->beta,
                         .value = divergence_item(d, DIVERGENCE_VALUE)};
    if (d->lists) divergence_lists(&a, d->lists);
    else divergence_teacher(&a, d);
    return a;
}

/* Adds the gradient's part; see model_divergence_backward(). */
static inline void divergence_gradient(TokenDivergence *a, const Model *m, const Workspace *w, const ModelDivergence *d,
                                       const float *weight, const float *dlogp, const float *dentropy) {
    const Backend *b = m->backend;
    const size_t bytes = (size_t)a->head.rows * sizeof(float);
    b->upload(m->device, divergence_item(d, DIVERGENCE_WEIGHT), weight, bytes);
    a->weight = divergence_item(d, DIVERGENCE_WEIGHT);
    if (dlogp) {
        b->upload(m->device, work_floats(w, WORK_dlogp, 0), dlogp, bytes);
        a->head.dlogp = work_floats(w, WORK_dlogp, 0);
    }
    if (dentropy) {
        b->upload(m->device, work_floats(w, WORK_dentropy, 0), dentropy, bytes);
        a->head.dentropy = work_floats(w, WORK_dentropy, 0);
    }
    a->head.dh = work_acts(w, WORK_dh, 0);
    a->head.dweight = model_head_grad(m, a->head.rows);
}

/* Runs both trunks and the operation. weight: NULL, or the gradient is computed up to the head's input. */
static inline void divergence_run(const Model *m, const Workspace *w, const Batch *batch, const ModelDivergence *d,
                                  const Batch *read, float temperature, const ModelOutput *out,
                                  const DivergenceOutput *apart, const float *weight, const float *dlogp) {
    const Backend *b = m->backend;
    const size_t R = (size_t)batch->targets, bytes = R * sizeof(float);
    const ModelOutput none = {0};
    if (d->lists) teacher_lists_upload(d->lists, m, R);
    else model_forward(d->teacher, d->work, read ? read : batch, 1.0f, &none);
    model_forward(m, w, batch, 1.0f, &none);
    TokenDivergence a = divergence_of(m, w, batch, d, temperature);
    a.head.entropy = out->entropy ? work_floats(w, WORK_entropy, 0) : NULL;
    a.head.argmax = out->argmax ? work_ints(w, WORK_argmax) : NULL;
    a.forward_kl = apart->forward_kl ? divergence_item(d, DIVERGENCE_FORWARD) : NULL;
    a.reverse_kl = apart->reverse_kl ? divergence_item(d, DIVERGENCE_REVERSE) : NULL;
    assert(!d->lists || (!apart->logp && !apart->entropy && !apart->argmax)); /* whoever has the lists has these */
    a.entropy = apart->entropy ? work_floats(d->work, WORK_entropy, 0) : NULL;
    a.argmax = apart->argmax ? work_ints(d->work, WORK_argmax) : NULL;
    if (weight) divergence_gradient(&a, m, w, d, weight, dlogp, NULL);
    b->divergence(m->device, &a);
    const struct {
        void *host;
        const void *device;
    } results[] = {{out->logp, a.head.logp}, {out->entropy, a.head.entropy},    {out->argmax, a.head.argmax},
                   {apart->value, a.value},  {apart->forward_kl, a.forward_kl}, {apart->reverse_kl, a.reverse_kl},
                   {apart->logp, a.logp},    {apart->entropy, a.entropy},       {apart->argmax, a.argmax}};
    for (size_t i = 0; i < sizeof results / sizeof *results; i++)
        if (results[i].host) b->download(m->device, results[i].host, results[i].device, bytes);
}

/* Computes what `out` and `apart` request for the batch's targets. read: the batch that the teacher reads, with as many
 * targets; NULL: the same one. temperature: of the log-probabilities and entropies of `out`. */
static inline void model_divergence(const Model *m, const Workspace *w, const Batch *batch, const ModelDivergence *d,
                                    const Batch *read, float temperature, const ModelOutput *out,
                                    const DivergenceOutput *apart) {
    divergence_run(m, w, batch, d, read, temperature, out, apart, NULL, NULL);
}

/* Adds the gradients of the parameters of sum_r weight_r D_r and of a loss of log-probabilities and entropies, after
 * model_divergence() on the same batch. weight, dlogp, dentropy: (R) on the host; dlogp and dentropy may be NULL. */
static inline void model_divergence_backward(const Model *m, const Workspace *w, const Batch *batch,
                                             const ModelDivergence *d, float temperature, const float *weight,
                                             const float *dlogp, const float *dentropy) {
    TokenDivergence a = divergence_of(m, w, batch, d, temperature);
    divergence_gradient(&a, m, w, d, weight, dlogp, dentropy);
    m->backend->divergence(m->device, &a);
    model_trunk_backward(m, w, batch);
}

/* model_divergence() and model_divergence_backward() in one, for weights and dlogp that are known in advance. */
static inline void model_divergence_both(const Model *m, const Workspace *w, const Batch *batch,
                                         const ModelDivergence *d, const Batch *read, float temperature,
                                         const float *weight, const float *dlogp, const ModelOutput *out,
                                         const DivergenceOutput *apart) {
    divergence_run(m, w, batch, d, read, temperature, out, apart, weight, dlogp);
    model_trunk_backward(m, w, batch);
}

#endif
