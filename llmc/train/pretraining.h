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
 *     int64_t micros = pretraining_plan(&p, &trainer, &batch, 1024);         // micro-batches of this rank in this step
 *     loss += pretraining_loss(&p, &trainer, &work, &batch, 27.8);           // forward and backward
 *     pretraining_close(&p);
 */
#ifndef LLMC_TRAIN_PRETRAINING_H
#define LLMC_TRAIN_PRETRAINING_H

#include "../base/error.h"        /* xcalloc, Error, error_set, xrealloc */
#include "../dist/dist.h"         /* dist_total */
#include "../model/batch.h"       /* Batch */
#include "../model/config.h"      /* ModelConfig */
#include "../model/micro_plan.h"  /* BatchSize, MicroPlan, micro_plan_add, micro_plan_begin, ... */
#include "../model/pack.h"        /* batch_clear, batch_sequence */
#include "../model/transformer.h" /* ModelOutput, model_forward_backward */
#include "../model/workspace.h"   /* Workspace */
#include "../records/tokens.h"    /* TokenShard, token_at, tokens_close, tokens_open */
#include "trainer.h"              /* Trainer, trainer_count_flops */

/* Tokens at ... at+count-1 of the shard. */
typedef struct PretrainingWindow {
    int64_t at;
    int32_t count;
} PretrainingWindow;

typedef struct Pretraining {
    TokenShard shard;
    int32_t window;         /* tokens */
    int64_t position;       /* position of the first token of the next step */
    double loss;            /* nats per token, of the last step */
    int64_t targets, read;  /* number of targets and of tokens of this step, on all ranks */
    MicroPlan plan;         /* of this rank's windows in this step */
    PretrainingWindow *own; /* (windows of a step) those of this rank */
    int32_t *tokens;        /* (window) */
    float *logp, *dlogp;    /* (rows) */
} Pretraining;

static inline void pretraining_close(Pretraining *p) {
    tokens_close(&p->shard);
    free(p->own), free(p->tokens), free(p->logp), free(p->dlogp);
    micro_plan_free(&p->plan);
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

/* Takes the next N targets of the text, in windows, each for one of the ranks. Returns this rank's number of
 * micro-batches. b: the batch that pretraining_loss() will use. */
static inline int64_t pretraining_plan(Pretraining *p, const Trainer *t, const Batch *b, int64_t N) {
    const TokenShard *s = &p->shard;
    int32_t own = 0;
    p->targets = N;
    p->read = 0;
    micro_plan_begin(&p->plan, b, 0);
    for (int64_t left = N, window = 0; left > 0; window++) {
        if (s->count - p->position < 2) p->position = 0;
        int64_t n = s->count - p->position < p->window ? s->count - p->position : p->window;
        if (n > left + 1) n = left + 1;
        if (window % t->dist.ranks == t->dist.rank) {
            p->own = (PretrainingWindow *)xrealloc(p->own, (size_t)own + 1, sizeof *p->own);
            p->own[own++] = (PretrainingWindow){p->position, (int32_t)n};
            micro_plan_add(&p->plan, (BatchSize){n, n - 1, 1});
        }
        p->read += n;
        left -= n - 1;
        p->position += n - 1;
    }
    return p->plan.micros;
}

static inline void pretraining_pack(Pretraining *p, Batch *b, int32_t first, int32_t end) {
    batch_clear(b);
    for (int32_t i = first; i < end; i++) {
        const PretrainingWindow *w = &p->own[i];
        for (int32_t k = 0; k < w->count; k++) p->tokens[k] = token_at(&p->shard, w->at + k);
        batch_sequence(b, p->tokens, NULL, w->count);
    }
}

/* Runs the targets of pretraining_plan(): adds their gradients and returns coef times their mean loss over all ranks.
 * These must be the last backward passes of the step. b: the trainer's batch, which is overwritten. Collective. */
static inline double pretraining_loss(Pretraining *p, Trainer *t, const Workspace *w, Batch *b, double coef) {
    const double N = (double)p->targets;
    double sum = 0;
    for (int32_t m = 0; m < p->plan.micros; m++) {
        pretraining_pack(p, b, p->plan.first[m], p->plan.first[m + 1]);
        for (int32_t i = 0; i < b->targets; i++) p->dlogp[i] = (float)-(coef / N);
        model_forward_backward(&t->model, w, b, 1.0f, p->dlogp, &(ModelOutput){.logp = p->logp});
        for (int32_t i = 0; i < b->targets; i++) sum -= p->logp[i];
        trainer_count_flops(t, &t->model, b, 3);
    }
    t->tokens += p->read;
    t->trained += p->targets;
    p->loss = dist_total(&t->dist, sum) / N;
    return coef * p->loss;
}

#endif
