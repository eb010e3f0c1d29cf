/* engine.h - the thread that samples for all requests of a server: each joins the running batch when a slot is free.
 *
 * A request becomes a job: one choice for each of its completions. serve_engine_submit() queues it, from any thread, and
 * serve_engine_run() samples until it is told to stop. The thread that submitted a job reads its choices while they grow,
 * with the engine's lock held, and waits on the job's condition.
 *
 *   - Every choice takes one slot of the sampling engine (../rollout/rollout.h) by itself. Choices begin in the order of
 *     their jobs.
 *   - One model call runs all prompts and all running choices; tokens are drawn in groups of equal settings.
 *   - The keys and values of a choice that is over stay in its slot until another one takes it: a prompt that begins with the
 *     same tokens, as the next turn of a chat, runs only the others (prefix cache). They belong to the weights: when those
 *     change, serve_engine_forget_prefixes() is due.
 *   - Log-probabilities of a prompt (echo) take a forward pass of their own, of as many prompts as fit, between two calls.
 *   - Log-probabilities are those of softmax(logits / temperature) over the whole vocabulary, before top_p and the like, as
 *     everywhere in these programs; of a prompt, and of greedy tokens, those at temperature 1.
 *
 * A sample depends on the weights, the prompt and its seed alone, up to rounding, not on the other requests.
 *
 *     ServeEngine x;
 *     if (!serve_engine_open(&x, &served, &model, slots, 64, seed, &e)) die("%s", e.text);
 *     serve_engine_run(&x, stopping, NULL, NULL, &e);    // until stopping() returns true
 *     serve_engine_close(&x);
 */
#ifndef LLMC_SERVE_ENGINE_H
#define LLMC_SERVE_ENGINE_H

#include "../base/clock.h"        /* clock_seconds */
#include "../base/error.h"        /* xcalloc, Error, xmalloc, error_set */
#include "../base/text.h"         /* TokenList, token_list_extend, token_list_free */
#include "../model/backend.h"     /* Acts, Floats, acts_at, Backend, ... */
#include "../model/batch.h"       /* Batch */
#include "../model/config.h"      /* ModelConfig */
#include "../model/decode.h"      /* DecodeStep, decode_draw, decode_head, decode_rows */
#include "../model/model.h"       /* Model, model_sync */
#include "../model/pack.h"        /* batch_fits, batch_clear, batch_free, batch_new, ... */
#include "../model/transformer.h" /* model_logits_of, model_targets, model_trunk */
#include "../model/workspace.h"   /* WORK_h, work_acts, KVCache, Workspace */
#include "../rollout/rollout.h"   /* Sampling, RolloutRequest, Completion, Rollout, ... */
#include "../rollout/stop_text.h" /* stop_text_cut */
#include "request.h"              /* ServeRequest, ServeModel, serve_request_free */
#include <math.h>
#include <pthread.h>
#include <time.h>

enum { SERVE_LOGITS = 32 }; /* rows whose logits are on the host at once */

/* A token and its log-probability; id -1: none. */
typedef struct ServeTop {
    int32_t id;
    float logp;
} ServeTop;

/* A completion of a job. */
typedef struct ServeChoice {
    struct ServeJob *job;
    int prompt;     /* index of its prompt */
    Completion c;   /* grows while it is sampled */
    ServeTop *top;  /* (tokens, request.top) the most likely ones, the first first; NULL: not asked for */
    uint64_t id;    /* of the sample */
    int entry;      /* its request of the engine; -1: it is not running */
    int32_t cached; /* tokens of its prompt that were in the cache */
    bool over;
} ServeChoice;

/* The log-probabilities of a prompt. */
typedef struct ServeScore {
    float *logp;   /* (tokens) that of the first is not defined */
    ServeTop *top; /* (tokens, request.top) */
    bool over;
} ServeScore;

typedef struct ServeJob {
    ServeRequest request;
    ServeChoice *choice; /* (choices) those of prompt i are i n ... i n + n-1 */
    int choices;
    ServeScore *score;                  /* (prompts) or NULL */
    int next;                           /* the first choice that has not begun */
    int left;                           /* choices and scores that are not over */
    struct ServeTrajectory *trajectory; /* that it belongs to (gateway.h), or NULL */
    bool cancelled, failed;
    Error e; /* of a failure */
    pthread_cond_t changed;
    struct ServeJob *after; /* in the queue */
} ServeJob;

/* The tokens whose keys and values are in a slot that is free. */
typedef struct ServeKept {
    TokenList ids;
    int64_t used; /* when: a counter */
} ServeKept;

typedef struct ServeEngine {
    const ServeModel *serve;
    const Model *model;
    Sampling run; /* of the engine: seed and stream */
    Rollout r;
    RolloutRequest *requests; /* (slots) of running choices */
    const Sampling **how;     /* (slots) their settings */
    ServeChoice **running;    /* (slots); NULL: the entry is free */
    ServeKept *kept;          /* (slots) */
    bool no_prefixes;         /* nothing is kept */
    ServeJob *first, *last;   /* jobs that are not over */
    int waiting, queue;       /* jobs none of whose choices has begun; the most that may wait */
    uint64_t next_id;
    Batch score;                                                 /* prompts to be scored */
    Floats *logits;                                              /* (SERVE_LOGITS, vocab) on the device */
    float *host;                                                 /* the same on the host */
    int32_t *order;                                              /* (targets) */
    int32_t *row;                                                /* (targets) */
    int32_t *stream;                                             /* (targets, 2) */
    int32_t *index;                                              /* (targets) */
    int32_t *token;                                              /* (targets) */
    float *logp;                                                 /* (targets) */
    int64_t jobs, samples, tokens, prompt_tokens, cached_tokens; /* since the start */
    bool ended;
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct ServeEngine *other; /* of a second model, whose rounds take turns with this one's; NULL: there is none */
} ServeEngine;

/* ---- jobs ------------------------------------------------------------------------------------------------------ */

/* Makes a condition for serve_wait(). */
static inline void serve_condition(pthread_cond_t *c) {
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(c, &clock);
    pthread_condattr_destroy(&clock);
}

/* Waits for the condition, with the engine's lock, for some milliseconds (fewer than 1000) at most. */
static inline void serve_wait(ServeEngine *x, pthread_cond_t *c, long milliseconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 1000000 * milliseconds;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(c, &x->lock, &until);
}

/* Makes a job of a request, which it takes over. */
static inline ServeJob *serve_job_new(ServeRequest *q) {
    ServeJob *job = (ServeJob *)xcalloc(1, sizeof *job);
    serve_condition(&job->changed);
    job->request = *q;
    *q = (ServeRequest){0};
    q = &job->request;
    const size_t top = q->top > 0 ? (size_t)q->top : 0;
    job->choices = q->prompts * q->samples;
    job->choice = (ServeChoice *)xcalloc((size_t)job->choices, sizeof *job->choice);
    for (int i = 0; i < job->choices; i++)
        job->choice[i] = (ServeChoice){.job = job, .prompt = i / q->samples, .entry = -1, .over = !q->how.max_new};
    job->left = q->how.max_new ? job->choices : 0;
    job->next = q->how.max_new ? 0 : job->choices;
    if (q->echo && q->top >= 0) {
        job->score = (ServeScore *)xcalloc((size_t)q->prompts, sizeof *job->score);
        for (int i = 0; i < q->prompts; i++) {
            const size_t n = (size_t)q->prompt[i].count;
            job->score[i].logp = (float *)xcalloc(n, sizeof(float));
            job->score[i].top = (ServeTop *)xcalloc(n * top + 1, sizeof(ServeTop));
        }
        job->left += q->prompts;
    }
    return job;
}

/* Frees a job that is over. */
static inline void serve_job_free(ServeJob *job) {
    for (int i = 0; i < job->choices; i++) {
        completion_free(&job->choice[i].c);
        free(job->choice[i].top);
    }
    for (int i = 0; job->score && i < job->request.prompts; i++) free(job->score[i].logp), free(job->score[i].top);
    free(job->choice), free(job->score);
    pthread_cond_destroy(&job->changed);
    serve_request_free(&job->request);
    free(job);
}

/* Whether the only token of a choice is the most likely one after its prompt, which the prompt's scores tell. */
static inline bool serve_scored_token(const ServeRequest *q) {
    return q->how.max_new == 1 && q->how.temperature == 0 && q->samples == 1;
}

/* ---- log-probabilities ----------------------------------------------------------------------------------------- */

/* Finds the k most likely tokens of logits z (V) and the log-probability of `token` under softmax(z / temperature). Of
 * equal ones the one with the lower id comes first. */
static inline float serve_rank(const float *z, int V, float temperature, int32_t token, int k, ServeTop *top) {
    const float scale = temperature > 0 ? 1 / temperature : 1;
    int filled = 0;
    float most = z[0];
    double sum = 0;
    for (int v = 1; v < V; v++) most = z[v] > most ? z[v] : most;
    for (int v = 0; v < V; v++) sum += expf((z[v] - most) * scale);
    const float norm = (float)log(sum);
    for (int v = 0; k && v < V; v++) {
        if (filled == k && !(z[v] > z[top[k - 1].id])) continue;
        int at = filled < k ? filled++ : k - 1;
        for (; at && z[v] > z[top[at - 1].id]; at--) top[at] = top[at - 1];
        top[at].id = v;
    }
    for (int i = 0; i < k; i++)
        top[i] = i < filled ? (ServeTop){top[i].id, (z[top[i].id] - most) * scale - norm} : (ServeTop){-1, 0};
    return (z[token] - most) * scale - norm;
}

/* The logits of rows [first, first + n) of the head's input, on the host: (n, V), n <= SERVE_LOGITS. */
static inline const float *serve_logits(ServeEngine *x, int first, int n) {
    const Model *m = x->model;
    const ModelConfig *c = &m->config;
    const Backend *b = m->backend;
    const Acts *h = acts_at(b, work_acts(&x->r.work, WORK_h, 0), (size_t)first * (size_t)c->width);
    model_logits_of(m, x->logits, h, n);
    b->download(m->device, x->host, x->logits, (size_t)n * (size_t)c->vocab * sizeof(float));
    return x->host;
}

/* ---- drawing --------------------------------------------------------------------------------------------------- */

/* The choice of target t of the batch. */
static inline ServeChoice *serve_target(const ServeEngine *x, int t) { return x->running[x->r.target[t].request]; }

static inline bool serve_same_settings(const Sampling *a, const Sampling *b) {
    return a->temperature == b->temperature && a->top_p == b->top_p && a->min_p == b->min_p && a->top_k == b->top_k;
}

/* Sets x->order to the targets, those of equal settings one after another, and fills in their arrays in this order. */
static inline void serve_order(ServeEngine *x, const Batch *batch, const DecodeStep *step) {
    int n = 0;
    bool *done = (bool *)xcalloc((size_t)batch->targets, 1);
    for (int t = 0; t < batch->targets; t++)
        for (int u = t; !done[t] && u < batch->targets; u++)
            if (!done[u] && (u == t || serve_same_settings(&serve_target(x, t)->job->request.how,
                                                           &serve_target(x, u)->job->request.how))) {
                x->order[n++] = u;
                if (u != t) done[u] = true;
            }
    for (int i = 0; i < n; i++) {
        const int t = x->order[i];
        x->row[i] = batch->target_row[t];
        x->stream[2 * i] = step->stream[2 * t];
        x->stream[2 * i + 1] = step->stream[2 * t + 1];
        x->index[i] = step->index[t];
    }
    free(done);
}

/* Fills in the most likely tokens of the choices that want them, whose tokens have been drawn. */
static inline void serve_tops(ServeEngine *x, int targets) {
    const int V = x->model->config.vocab;
    for (int first = 0; first < targets; first += SERVE_LOGITS) {
        const int n = targets - first < SERVE_LOGITS ? targets - first : SERVE_LOGITS;
        bool any = false;
        for (int i = 0; i < n; i++) any = any || serve_target(x, x->order[first + i])->top;
        if (!any) continue;
        const float *z = serve_logits(x, first, n);
#pragma omp parallel for
        for (int i = 0; i < n; i++) {
            ServeChoice *a = serve_target(x, x->order[first + i]);
            const ServeRequest *q = &a->job->request;
            if (a->top)
                x->logp[first + i] = serve_rank(z + (size_t)i * (size_t)V, V, q->how.temperature, x->token[first + i],
                                                q->top, a->top + (size_t)a->c.count * (size_t)q->top);
        }
    }
}

/* Draws each target's token by the settings of its request. Used as Rollout.decode. */
static inline void serve_decode(void *context, const Model *m, const Workspace *w, const KVCache *kv,
                                const Batch *batch, Draw how, const DecodeStep *step) {
    ServeEngine *x = (ServeEngine *)context;
    const int R = batch->targets, C = m->config.width;
    serve_order(x, batch, step);
    Batch ordered = *batch;
    ordered.target_row = x->row;
    decode_rows(m, w, kv, &ordered, step);
    decode_head(&how, m);
    for (int first = 0, n; first < R; first += n) {
        const Sampling *s = &serve_target(x, x->order[first])->job->request.how;
        for (n = 1; first + n < R; n++)
            if (!serve_same_settings(s, &serve_target(x, x->order[first + n])->job->request.how)) break;
        how.temperature = s->temperature;
        how.top_p = s->top_p;
        how.min_p = s->min_p;
        how.top_k = s->top_k;
        const Acts *h = acts_at(m->backend, work_acts(w, WORK_h, 0), (size_t)first * (size_t)C);
        const DecodeStep part = {.stream = x->stream + 2 * first,
                                 .index = x->index + first,
                                 .token = x->token + first,
                                 .logp = x->logp + first};
        decode_draw(m, w, how, &part, h, (size_t)n);
    }
    serve_tops(x, R);
    for (int i = 0; i < R; i++) {
        step->token[x->order[i]] = x->token[i];
        step->logp[x->order[i]] = x->logp[i];
    }
}

/* ---- scores of prompts ----------------------------------------------------------------------------------------- */

/* A prompt to be scored. */
typedef struct ServeScored {
    ServeJob *job;
    int prompt;
} ServeScored;

/* Ends the choice of a scored prompt whose only token is the most likely one, z (V) being the logits after the prompt. */
static inline void serve_scored_choice(ServeEngine *x, ServeChoice *a, const float *z) {
    const ServeRequest *q = &a->job->request;
    const size_t top = q->top > 0 ? (size_t)q->top : 0;
    ServeTop best;
    a->c.tokens = (int32_t *)xmalloc(sizeof(int32_t));
    a->c.logp = (float *)xmalloc(sizeof(float));
    a->top = (ServeTop *)xcalloc(top + 1, sizeof *a->top);
    serve_rank(z, x->model->config.vocab, 1, 0, 1, &best);
    a->c.tokens[0] = best.id;
    a->c.logp[0] = serve_rank(z, x->model->config.vocab, 1, best.id, (int)top, a->top);
}

/* Fills the batch of prompts to be scored. Returns their number; list: (rows) them. */
static inline int serve_score_gather(ServeEngine *x, ServeScored *list) {
    int n = 0;
    batch_clear(&x->score);
    for (ServeJob *job = x->first; job; job = job->after)
        for (int i = 0; job->score && !job->cancelled && i < job->request.prompts; i++) {
            const TokenList *prompt = &job->request.prompt[i];
            if (job->score[i].over) continue;
            if (!batch_fits(&x->score, prompt->count, prompt->count, 1)) return n;
            const int g = batch_segment(&x->score, prompt->ids, prompt->count, 0, -1);
            const int last = prompt->count - 1 + serve_scored_token(&job->request);
            for (int k = 0; k < last; k++) batch_target(&x->score, x->score.segment[g].start + k, 0);
            list[n++] = (ServeScored){job, i};
        }
    return n;
}

/* Computes the log-probabilities of the prompts of the batch. Runs without the lock: nothing else reads them yet. */
static inline bool serve_score_run(ServeEngine *x, const ServeScored *list, int count, Error *e) {
    const Model *m = x->model;
    const int V = m->config.vocab, R = x->score.targets;
    ServeScored *of = (ServeScored *)xcalloc((size_t)R + 1, sizeof *of);
    int *place = (int *)xcalloc((size_t)R + 1, sizeof *place), t = 0;
    for (int i = 0; i < count; i++) {
        const ServeRequest *q = &list[i].job->request;
        const int last = q->prompt[list[i].prompt].count - 1 + serve_scored_token(q);
        for (int k = 0; k < last; k++, t++) {
            of[t] = list[i];
            place[t] = k + 1;
        }
    }
    model_trunk(m, &x->r.work, &x->score, NULL);
    if (R) model_targets(m, &x->r.work, &x->score);
    for (int first = 0; first < R; first += SERVE_LOGITS) {
        const int n = R - first < SERVE_LOGITS ? R - first : SERVE_LOGITS;
        const float *z = serve_logits(x, first, n);
#pragma omp parallel for
        for (int i = 0; i < n; i++) {
            ServeJob *job = of[first + i].job;
            const ServeRequest *q = &job->request;
            const TokenList *prompt = &q->prompt[of[first + i].prompt];
            ServeScore *score = &job->score[of[first + i].prompt];
            const int k = place[first + i];
            const float *row = z + (size_t)i * (size_t)V;
            if (k < prompt->count)
                score->logp[k] = serve_rank(row, V, 1, prompt->ids[k], q->top, score->top + (size_t)k * (size_t)q->top);
            else serve_scored_choice(x, &job->choice[of[first + i].prompt], row);
        }
    }
    free(of), free(place);
    return model_sync(m, e);
}

/* ---- the queue ------------------------------------------------------------------------------------------------- */

/* Removes jobs that are over from the queue and wakes their readers. Called with the lock. */
static inline void serve_sweep(ServeEngine *x) {
    ServeJob **at = &x->first;
    x->last = NULL;
    for (ServeJob *job = x->first, *after; job; job = after) {
        after = job->after;
        if (!job->left) {
            *at = after;
            pthread_cond_broadcast(&job->changed);
        } else {
            at = &job->after;
            x->last = job;
        }
    }
}

/* Notes what a choice that is over leaves in its slot: all its tokens but the last one, which has not been run. */
static inline void serve_keep(ServeEngine *x, const ServeChoice *a) {
    const RolloutRequest *r = &x->requests[a->entry];
    ServeKept *kept = &x->kept[r->slot - 1];
    kept->ids.count = 0;
    kept->used = x->samples + 1;
    if (x->no_prefixes || !a->c.count) return;
    token_list_extend(&kept->ids, r->prompt, r->prompt_len);
    token_list_extend(&kept->ids, a->c.tokens, a->c.count - 1);
}

/* Forgets the keys and values of all slots. */
static inline void serve_engine_forget_prefixes(ServeEngine *x) {
    for (int i = 0; i < x->r.slots; i++) x->kept[i].ids.count = 0;
}

/* Chooses the free slot for a prompt: the one with the longest common beginning, unless that would lose more than it saves,
 * else the one that was used longest ago. *cached: the tokens that it has, without the last one of the prompt, which has to be
 * run to draw the next. Returns -1 if no slot is free. */
static inline int serve_slot(const ServeEngine *x, const TokenList *prompt, int32_t *cached) {
    int best = -1;
    int32_t most = 0;
    *cached = 0;
    for (int i = 0; i < x->r.slots; i++) {
        const ServeKept *kept = &x->kept[i];
        int32_t same = 0;
        if (x->r.slot[i].prompt_area >= 0 || x->r.area_users[i]) continue;
        while (same < kept->ids.count && same < prompt->count - 1 && kept->ids.ids[same] == prompt->ids[same]) same++;
        const int32_t saved = 2 * same >= kept->ids.count ? same : 0;
        if (best >= 0 && (saved < most || (saved == most && kept->used >= x->kept[best].used))) continue;
        best = i;
        most = saved;
        *cached = same;
    }
    return best;
}

static inline void serve_choice_over(ServeEngine *x, ServeChoice *a) {
    if (a->entry >= 0) serve_keep(x, a);
    if (a->entry >= 0) x->running[a->entry] = NULL;
    a->entry = -1;
    a->over = true;
    a->job->left--;
    x->samples++;
    x->tokens += a->c.count;
}

/* Ends what is left of a job. */
static inline void serve_job_end(ServeEngine *x, ServeJob *job) {
    for (int i = 0; i < job->choices; i++) {
        ServeChoice *a = &job->choice[i];
        if (a->over) continue;
        if (a->entry >= 0) rollout_remove(&x->r, a->entry, 0);
        serve_choice_over(x, a);
    }
    if (!job->next) x->waiting--;
    job->next = job->choices;
    job->left = 0;
}

/* Adds choices to the batch while there are free slots. Called with the lock. */
static inline void serve_admit(ServeEngine *x, int free_slots) {
    int entry = 0;
    for (ServeJob *job = x->first; job && free_slots > 0; job = job->after) {
        const ServeRequest *q = &job->request;
        while (job->next < job->choices && free_slots > 0) {
            ServeChoice *a = &job->choice[job->next];
            if (job->score && !job->score[a->prompt].over) break; /* its prompt comes first */
            while (x->running[entry]) entry++;
            RolloutRequest *r = &x->requests[entry];
            int64_t next = entry;
            int32_t cached;
            const int slot = serve_slot(x, &q->prompt[a->prompt], &cached);
            *r = (RolloutRequest){.prompt = q->prompt[a->prompt].ids,
                                  .prompt_len = q->prompt[a->prompt].count,
                                  .samples = 1,
                                  .id = a->id,
                                  .out = &a->c,
                                  .slot = slot + 1,
                                  .cached = cached};
            if (slot < 0 || !batch_fits(&x->r.batch, r->prompt_len - cached, 1, 1)) return;
            if (!a->c.tokens) {
                rollout_open(&x->r, &q->how, r);
                const size_t room = (size_t)q->how.max_new * (size_t)(q->top > 0 ? q->top : 0);
                if (q->top >= 0) a->top = (ServeTop *)xcalloc(room + 1, sizeof *a->top);
            }
            x->running[entry] = a;
            x->how[entry] = &q->how;
            a->entry = entry;
            a->cached = cached;
            x->kept[slot].ids.count = 0;
            x->prompt_tokens += r->prompt_len;
            x->cached_tokens += cached;
            rollout_add_prompts(&x->r, &x->run, x->requests, entry + 1, &next, free_slots);
            assert(next == entry + 1);
            if (!job->next++) x->waiting--;
            free_slots--;
        }
    }
}

/* Ends the choices that have no slot any more, and wakes the readers of all that have a new token. */
static inline void serve_publish(ServeEngine *x) {
    bool *alive = (bool *)xcalloc((size_t)x->r.slots, 1);
    for (int i = 0; i < x->r.slots; i++)
        if (x->r.slot[i].prompt_area >= 0) alive[x->r.slot[i].request] = true;
    for (int i = 0; i < x->r.slots; i++) {
        ServeChoice *a = x->running[i];
        if (!a) continue;
        if (a->job->request.stream) pthread_cond_broadcast(&a->job->changed);
        if (!alive[i]) serve_choice_over(x, a);
    }
    free(alive);
    serve_sweep(x);
}

/* ---- the engine ------------------------------------------------------------------------------------------------ */

static inline void serve_engine_close(ServeEngine *x) {
    if (!x->model) return;
    if (x->logits) x->model->backend->release(x->model->device, x->logits);
    for (int i = 0; x->kept && i < x->r.slots; i++) token_list_free(&x->kept[i].ids);
    free(x->kept);
    rollout_free(&x->r);
    batch_free(&x->score);
    free(x->requests), free(x->running), free(x->how), free(x->host), free(x->order), free(x->row), free(x->stream),
        free(x->index);
    free(x->token), free(x->logp);
    pthread_mutex_destroy(&x->lock);
    pthread_cond_destroy(&x->work);
    *x = (ServeEngine){0};
}

/* slots: choices that are sampled at once; queue: jobs that may wait for one; seed: of samples without their own. */
static inline bool serve_engine_open(ServeEngine *x, const ServeModel *serve, const Model *m, int slots, int queue,
                                     uint64_t seed, Error *e) {
    const size_t V = (size_t)m->config.vocab;
    *x = (ServeEngine){.serve = serve, .queue = queue};
    if ((int64_t)slots * serve->length > INT32_MAX)
        return error_set(e, "%d slots of %d tokens are too many for one cache", slots, serve->length);
    if (!rollout_new_lone(&x->r, m, slots, serve->length, e)) return false;
    x->model = m;
    rollout_begin(&x->r);
    x->run = serve->standard;
    x->run.seed = seed;
    x->how = (const Sampling **)xcalloc((size_t)slots, sizeof *x->how);
    x->r.how = x->how;
    x->r.decode = serve_decode;
    x->r.decode_context = x;
    const size_t R = (size_t)x->r.batch.targets_max, T = (size_t)x->r.batch.rows_max;
    x->requests = (RolloutRequest *)xcalloc((size_t)slots, sizeof *x->requests);
    x->kept = (ServeKept *)xcalloc((size_t)slots, sizeof *x->kept);
    x->running = (ServeChoice **)xcalloc((size_t)slots, sizeof *x->running);
    x->order = (int32_t *)xcalloc(R, sizeof(int32_t));
    x->row = (int32_t *)xcalloc(R, sizeof(int32_t));
    x->stream = (int32_t *)xcalloc(2 * R, sizeof(int32_t));
    x->index = (int32_t *)xcalloc(R, sizeof(int32_t));
    x->token = (int32_t *)xcalloc(R, sizeof(int32_t));
    x->logp = (float *)xcalloc(R, sizeof(float));
    x->score = batch_new((int32_t)T, (int32_t)T, (int32_t)T);
    x->host = (float *)xmalloc(SERVE_LOGITS * V * sizeof(float));
    pthread_mutex_init(&x->lock, NULL);
    serve_condition(&x->work);
    x->logits = (Floats *)m->backend->alloc(m->device, SERVE_LOGITS * V * sizeof(float), "logits", e);
    if (x->logits) return true;
    serve_engine_close(x);
    return false;
}

/* Queues a job. Returns false if too many wait already, or the engine has ended: then job->failed tells. */
static inline bool serve_engine_submit(ServeEngine *x, ServeJob *job) {
    const ServeRequest *q = &job->request;
    pthread_mutex_lock(&x->lock);
    job->failed = x->ended;
    const bool ok = !x->ended && x->waiting < x->queue;
    if (ok && job->left) {
        for (int i = 0; i < job->choices; i++) /* ids of seeds have bit 55; each seed has room for 4096 choices */
            job->choice[i].id = q->named    ? q->id + (uint64_t)i
                                : q->seeded ? (1ull << 55) | ((q->seed << 12 | (uint64_t)i) & ((1ull << 55) - 1))
                                            : x->next_id++;
        if (x->last) x->last->after = job;
        else x->first = job;
        x->last = job;
        x->jobs++;
        if (!job->next) x->waiting++;
        pthread_cond_signal(&x->work);
    }
    pthread_mutex_unlock(&x->lock);
    return ok;
}

/* Waits until the job changes, with the lock, for a quarter of a second at most. */
static inline void serve_job_wait(ServeEngine *x, ServeJob *job) { serve_wait(x, &job->changed, 250); }

/* Ends a job, if it is not over, and frees it. */
static inline void serve_engine_forget(ServeEngine *x, ServeJob *job) {
    pthread_mutex_lock(&x->lock);
    job->cancelled = true;
    if (job->left) pthread_cond_signal(&x->work);
    while (job->left) serve_job_wait(x, job);
    pthread_mutex_unlock(&x->lock);
    serve_job_free(job);
}

/* Ends all jobs with a reason. Called with the lock. */
static inline void serve_fail(ServeEngine *x, const char *why) {
    for (ServeJob *job = x->first; job; job = job->after) {
        job->failed = true;
        snprintf(job->e.text, sizeof job->e.text, "%s", why);
        serve_job_end(x, job);
    }
    serve_sweep(x);
}

/* One round: scores prompts, runs the batch. Returns whether there was anything to do; *ok: it succeeded. Called with the
 * lock, which it gives up while the model runs. */
static inline bool serve_round(ServeEngine *x, bool *ok, Error *e) {
    *ok = true;
    for (ServeJob *job = x->first; job; job = job->after)
        if (job->cancelled && job->left) serve_job_end(x, job);
    serve_sweep(x);
    if (!x->first) return false;
    ServeScored *list = (ServeScored *)xcalloc((size_t)x->score.rows_max, sizeof *list);
    const int scored = serve_score_gather(x, list);
    const int free_slots = rollout_gather(&x->r, &x->run, x->requests);
    serve_admit(x, free_slots);
    pthread_mutex_unlock(&x->lock);
    if (scored) *ok = serve_score_run(x, list, scored, e);
    if (*ok && x->r.batch.rows) *ok = rollout_call(&x->r, &x->run, x->requests, e);
    pthread_mutex_lock(&x->lock);
    for (int i = 0; *ok && i < scored; i++) {
        ServeJob *job = list[i].job;
        ServeChoice *a = &job->choice[list[i].prompt];
        job->score[list[i].prompt].over = true;
        job->left--;
        if (!serve_scored_token(&job->request)) continue;
        a->c.count = 1;
        a->c.finished = sampling_is_stop(&job->request.how, a->c.tokens[0]) ||
                        stop_text_cut(&job->request.how.texts, a->c.tokens, 1) > 0;
        if (!job->next++) x->waiting--;
        serve_choice_over(x, a);
    }
    if (*ok) {
        rollout_take(&x->r, &x->run, x->requests, NULL, NULL);
        serve_publish(x);
    }
    free(list);
    return true;
}

/* A round of a second engine. */
static inline bool serve_other_round(ServeEngine *x, bool *ok, Error *e) {
    pthread_mutex_lock(&x->lock);
    const bool busy = serve_round(x, ok, e);
    pthread_mutex_unlock(&x->lock);
    return busy;
}

/* Ends an engine, with a reason for the requests that are not over. */
static inline void serve_end(ServeEngine *x, const char *why) {
    pthread_mutex_lock(&x->lock);
    x->ended = true;
    serve_fail(x, why);
    pthread_mutex_unlock(&x->lock);
}

/* Serves until `stopping` says so; every is called at least once a second, and may be NULL. Requests that are not over then
 * fail. Fails if a model does. */
static inline bool serve_engine_run(ServeEngine *x, bool (*stopping)(void *), void (*every)(void *), void *context,
                                    Error *e) {
    bool ok = true;
    double last = 0;
    pthread_mutex_lock(&x->lock);
    while (ok && !stopping(context)) {
        const double now = clock_seconds();
        if (every && now - last >= 1) {
            pthread_mutex_unlock(&x->lock);
            every(context);
            pthread_mutex_lock(&x->lock);
            last = now;
        }
        bool busy = serve_round(x, &ok, e);
        if (x->other && ok) {
            pthread_mutex_unlock(&x->lock);
            busy = serve_other_round(x->other, &ok, e) || busy;
            pthread_mutex_lock(&x->lock);
        }
        if (!busy) serve_wait(x, &x->work, x->other ? 5 : 50); /* requests to the other engine do not signal this one */
    }
    pthread_mutex_unlock(&x->lock);
    const char *why = ok ? "the server is stopping" : e->text;
    serve_end(x, why);
    if (x->other) serve_end(x->other, why);
    return ok;
}

#endif
