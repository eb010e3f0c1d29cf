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
 */
#ifndef LLMC_MODEL_DIVERGENCE_H
#define LLMC_MODEL_DIVERGENCE_H

#include "backend.h"     /* TokenDivergence, Backend, Floats, TokenDivergenceKind, ... */
#include "batch.h"       /* Batch */
#include "config.h"      /* ModelConfig */
#include "model.h"       /* Model, model_output_tensor, model_grad, model_weight */
#include "transformer.h" /* ModelOutput, model_forward, model_trunk_backward, model_head */
#include "workspace.h"   /* work_floats, Workspace, WORK_argmax, WORK_dentropy, ... */

/* The names of TokenDivergenceKind, for an option. */
#define TOKEN_DIVERGENCE_CHOICES "forward_kl|reverse_kl|jsd|tvd|skew_forward|skew_reverse"

typedef struct ModelDivergence {
    const Model *teacher;
    const Workspace *work; /* of the teacher, for inference */
    TokenDivergenceKind kind;
    float temperature, beta; /* of both distributions; see TokenDivergence */
} ModelDivergence;

/* Results on the host, (R) each; NULL: not wanted. */
typedef struct DivergenceOutput {
    float *value, *forward_kl, *reverse_kl;
    float *logp, *entropy; /* of the teacher, at the divergence's temperature */
    int32_t *argmax;       /* of the teacher */
} DivergenceOutput;

/* The values of the targets that are kept on the device in the teacher's workspace. */
typedef enum { DIVERGENCE_VALUE, DIVERGENCE_FORWARD, DIVERGENCE_REVERSE, DIVERGENCE_WEIGHT } DivergenceItem;

static inline Floats *divergence_item(const ModelDivergence *d, DivergenceItem item) {
    return floats_at(work_floats(d->work, WORK_divergence, 0), (size_t)item * (size_t)d->work->targets);
}

/* The operation on the batch's targets, without gradients. Both models' trunks have run. */
static inline TokenDivergence divergence_of(const Model *m, const Workspace *w, const Batch *batch,
                                            const ModelDivergence *d, float temperature) {
    const ModelConfig *c = &d->teacher->config;
    TokenDivergence a = {.head = model_head(m, w, batch, temperature),
                         .kind = d->kind,
                         .channels = c->width,
                         .padded_vocab = c->padded_vocab,
                         .temperature = d->temperature,
                         .beta = d->beta,
                         .cap = c->logit_cap,
                         .h = work_acts(d->work, WORK_h, 0),
                         .output = model_weight(d->teacher, model_output_tensor(c), 0),
                         .value = divergence_item(d, DIVERGENCE_VALUE),
                         .logp = work_floats(d->work, WORK_logp, 0)};
    if (c->vocab < a.head.vocab) a.head.vocab = c->vocab; /* tokens that only one model has are padding */
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
    a->head.dweight = model_grad(m, model_output_tensor(&m->config), 0);
}

/* Runs both trunks and the operation. weight: NULL, or the gradient is computed up to the head's input. */
static inline void divergence_run(const Model *m, const Workspace *w, const Batch *batch, const ModelDivergence *d,
                                  const Batch *read, float temperature, const ModelOutput *out,
                                  const DivergenceOutput *apart, const float *weight, const float *dlogp) {
    const Backend *b = m->backend;
    const size_t R = (size_t)batch->targets, bytes = R * sizeof(float);
    const ModelOutput none = {0};
    model_forward(d->teacher, d->work, read ? read : batch, 1.0f, &none);
    model_forward(m, w, batch, 1.0f, &none);
    TokenDivergence a = divergence_of(m, w, batch, d, temperature);
    a.head.entropy = out->entropy ? work_floats(w, WORK_entropy, 0) : NULL;
    a.head.argmax = out->argmax ? work_ints(w, WORK_argmax) : NULL;
    a.forward_kl = apart->forward_kl ? divergence_item(d, DIVERGENCE_FORWARD) : NULL;
    a.reverse_kl = apart->reverse_kl ? divergence_item(d, DIVERGENCE_REVERSE) : NULL;
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
