/* certainty.h - self-certainty of completions (Kang et al. 2025, 2502.18581, eq. 8): how far the model's distributions are
 * from uniform.
 *
 *   certainty = mean over the drawn tokens of KL(U || p) = mean of [ lse(z) - log V - (1/V) sum_v z_v ],  z the logits
 *
 * p is the model's distribution at temperature 1 before each token. The completions are run once more, without a cache,
 * because the sampler keeps no logits.
 *
 *     Certainty x;
 *     double mean;
 *     if (!certainty_open(&x, &model, longest, &e)) die("%s", e.text);             // tokens of a prompt and a completion
 *     if (!certainty_score(&x, prompt, prompt_len, &c, &mean, &e)) die("%s", e.text);
 *     certainty_close(&x);
 */
#ifndef LLMC_ROLLOUT_CERTAINTY_H
#define LLMC_ROLLOUT_CERTAINTY_H

#include "../base/error.h"        /* Error, xmalloc */
#include "../model/backend.h"     /* Floats, Backend, acts_at */
#include "../model/batch.h"       /* Batch */
#include "../model/config.h"      /* ModelConfig */
#include "../model/model.h"       /* Model, model_sync */
#include "../model/pack.h"        /* batch_clear, batch_free, batch_new, batch_segment, ... */
#include "../model/transformer.h" /* model_logits_of, model_targets, model_trunk */
#include "../model/workspace.h"   /* WORK_h, Workspace, work_acts, workspace_free, ... */
#include "rollout.h"              /* Completion, completion_mask */

enum { CERTAINTY_ROWS = 64 }; /* tokens whose logits exist at once */

typedef struct Certainty {
    const Model *model;
    Workspace work;
    Batch batch;
    Floats *logits; /* (CERTAINTY_ROWS, V) on the device */
    float *host;    /* the same */
    int32_t *ids;   /* (longest) */
} Certainty;

static inline void certainty_close(Certainty *c) {
    if (!c->model) return;
    workspace_free(&c->work, c->model);
    batch_free(&c->batch);
    if (c->logits) c->model->backend->release(c->model->device, c->logits);
    free(c->host), free(c->ids);
    *c = (Certainty){0};
}

/* longest: tokens of a prompt with its completion. */
static inline bool certainty_open(Certainty *c, const Model *m, int32_t longest, Error *e) {
    const size_t count = CERTAINTY_ROWS * (size_t)m->config.vocab;
    *c = (Certainty){.model = m};
    c->batch = batch_new(longest, longest, 1);
    c->host = (float *)xmalloc(count * sizeof *c->host);
    c->ids = (int32_t *)xmalloc((size_t)longest * sizeof *c->ids);
    c->logits = (Floats *)m->backend->alloc(m->device, count * sizeof(float), "logits", e);
    if (c->logits && workspace_new(&c->work, m, longest, longest, 1, false, 0, e)) return true;
    certainty_close(c);
    return false;
}

/* KL(U || softmax(z)) over V logits. */
static inline double certainty_of(const float *z, int V) {
    double top = z[0], sum = 0, mean = 0;
    for (int v = 1; v < V; v++) top = z[v] > top ? z[v] : top;
    for (int v = 0; v < V; v++) {
        sum += exp(z[v] - top);
        mean += z[v];
    }
    return top + log(sum) - log(V) - mean / V;
}

/* *score: the self-certainty of a completion; 0 if it has no drawn token. */
static inline bool certainty_score(Certainty *c, const int32_t *prompt, int32_t prompt_len, const Completion *x,
                                   double *score, Error *e) {
    const Model *m = c->model;
    const Backend *b = m->backend;
    const ModelConfig *g = &m->config;
    const uint8_t *drawn = completion_mask(x);
    double total = 0;
    memcpy(c->ids, prompt, (size_t)prompt_len * sizeof *c->ids);
    memcpy(c->ids + prompt_len, x->tokens, (size_t)x->count * sizeof *c->ids);
    batch_clear(&c->batch);
    batch_segment(&c->batch, c->ids, prompt_len + x->count, 0, -1);
    for (int32_t i = 0; i < x->count; i++)
        if (!drawn || drawn[i]) batch_target(&c->batch, prompt_len + i - 1, 0);
    const int R = c->batch.targets;
    *score = 0;
    if (!R) return true;
    model_trunk(m, &c->work, &c->batch, NULL);
    model_targets(m, &c->work, &c->batch);
    for (int r = 0; r < R; r += CERTAINTY_ROWS) {
        const int n = R - r < CERTAINTY_ROWS ? R - r : CERTAINTY_ROWS;
        model_logits_of(m, c->logits, acts_at(b, work_acts(&c->work, WORK_h, 0), (size_t)r * (size_t)g->width), n);
        b->download(m->device, c->host, c->logits, (size_t)n * (size_t)g->vocab * sizeof(float));
        if (!model_sync(m, e)) return false;
        for (int i = 0; i < n; i++) total += certainty_of(c->host + (size_t)i * (size_t)g->vocab, g->vocab);
    }
    *score = total / R;
    return true;
}

#endif
