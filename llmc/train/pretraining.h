/* pretraining.h - PPO-ptx: language-modelling loss on pretraining text, added to the policy's loss (InstructGPT: Ouyang
 * et al. 2022, 2203.02155, eq. 2). It preserves abilities that the reward does not measure.
 *
 *   loss = -coef / N sum log pi(x_t | x_<t)        over N tokens of the shard per step, at temperature 1
 *
 * The text is an llm.c token shard (tokens.h). It is read from start to end, repeatedly, in windows as long as the
 * model's context. A training state needs only `position`.
 *
 *     Pretraining p;
 *     if (!pretraining_open(&p, "text.bin", &config, rows, &e)) die("%s", e.text);
 *     loss += pretraining_loss(&p, &trainer, &work, &batch, 27.8, 1024);     // forward and backward
 *     pretraining_close(&p);
 */
#ifndef LLMC_TRAIN_PRETRAINING_H
#define LLMC_TRAIN_PRETRAINING_H

#include "../model/pack.h"
#include "../model/transformer.h"
#include "../records/tokens.h"
#include "trainer.h"

typedef struct Pretraining {
    TokenShard shard;
    int32_t window;      /* tokens */
    int64_t position;    /* of the next window's first token */
    double loss;         /* nats per token, of the last step */
    int32_t *tokens;     /* (window) */
    float *logp, *dlogp; /* (rows) */
} Pretraining;

static inline void pretraining_close(Pretraining *p) {
    tokens_close(&p->shard);
    free(p->tokens), free(p->logp), free(p->dlogp);
    *p = (Pretraining){0};
}

/* rows: of the largest micro-batch. */
static inline bool pretraining_open(Pretraining *p, const char *path, const ModelConfig *c, int rows, Error *e) {
    *p = (Pretraining){0};
    if (!tokens_open(&p->shard, path, c->vocab, e)) return false;
    if (p->shard.count < 2) {
        error_set(e, "%s: %lld tokens, expected at least two", path, (long long)p->shard.count);
        pretraining_close(p);
        return false;
    }
    p->window = c->context < rows ? c->context : rows;
    p->tokens = (int32_t *)xcalloc((size_t)p->window, sizeof *p->tokens);
    p->logp = (float *)xcalloc((size_t)rows, sizeof *p->logp);
    p->dlogp = (float *)xcalloc((size_t)rows, sizeof *p->dlogp);
    return true;
}

/* Runs the batch forward and backward and empties it. Returns the sum of -log pi. */
static inline double pretraining_batch(Pretraining *p, Trainer *t, const Workspace *w, Batch *b, double weight) {
    double sum = 0;
    for (int32_t i = 0; i < b->targets; i++) p->dlogp[i] = (float)-weight;
    model_forward_backward(&t->model, w, b, 1.0f, p->dlogp, &(ModelOutput){.logp = p->logp});
    for (int32_t i = 0; i < b->targets; i++) sum -= p->logp[i];
    t->flops += 3 * model_flops(&t->model.config, b->rows, b->targets, batch_pairs(b));
    t->tokens += b->rows;
    batch_clear(b);
    return sum;
}

/* Runs N targets of the text from `position` on, in windows, each on one of the ranks. Adds -log pi of this rank's
 * targets to *sum; if sum is NULL, only counts and leaves `position` unchanged. Returns this rank's number of
 * micro-batches. */
static inline int64_t pretraining_pass(Pretraining *p, Trainer *t, const Workspace *w, Batch *b, double weight,
                                       int64_t N, double *sum) {
    const TokenShard *s = &p->shard;
    const int64_t position = p->position;
    int64_t micros = 0, window = 0;
    batch_clear(b);
    for (int64_t left = N; left > 0; window++) {
        if (s->count - p->position < 2) p->position = 0;
        int64_t n = s->count - p->position < p->window ? s->count - p->position : p->window;
        if (n > left + 1) n = left + 1;
        for (int64_t i = 0; i < n; i++) p->tokens[i] = s->tokens[p->position + i];
        left -= n - 1;
        p->position += n - 1;
        if (window % t->dist.ranks != t->dist.rank) continue;
        if (!batch_fits(b, n, n - 1, 1)) {
            if (sum) *sum += pretraining_batch(p, t, w, b, weight);
            batch_clear(b);
            micros++;
        }
        batch_sequence(b, p->tokens, NULL, (int32_t)n);
    }
    if (b->targets && sum) *sum += pretraining_batch(p, t, w, b, weight);
    micros += window > t->dist.rank;
    if (!sum) p->position = position;
    return micros;
}

/* This rank's number of micro-batches for N targets, for dist_grads_begin(). */
static inline int64_t pretraining_micros(Pretraining *p, Trainer *t, Batch *b, int64_t N) {
    return pretraining_pass(p, t, NULL, b, 0, N, NULL);
}

/* Runs N targets of the text: adds their gradients and returns coef times their mean loss over all ranks. These must be
 * the last backward passes of the step. b: the trainer's batch, which is overwritten. Collective. */
static inline double pretraining_loss(Pretraining *p, Trainer *t, const Workspace *w, Batch *b, double coef,
                                      int64_t N) {
    double sum = 0;
    pretraining_pass(p, t, w, b, coef / (double)N, N, &sum);
    p->loss = dist_total(&t->dist, sum) / (double)N;
    return coef * p->loss;
}

#endif
