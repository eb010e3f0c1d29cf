/* rollout.h - sampling engine: batched decoding with a key/value cache, continuous refill of slots, shared prompts.
 *
 * A request is a prompt and the number of samples to draw for it. Each prompt is processed once, whatever its number of
 * samples: its keys and values are stored in an area of the cache that all its samples attend to. When a sample ends,
 * the next one takes its slot at once. New prompts and running samples go through the model in the same packed batch.
 *
 *   cache rows:  slots x [ prompt area: prompt_max, right-aligned | sample area: new_max ]
 *
 * If a prompt has only one sample, that sample runs in the slot of the prompt's area, so that both are adjacent and are
 * read as one segment.
 *
 * Completions of several turns (trajectory.h): when the model ends a turn, an environment (RolloutTurns) decides whether
 * the completion is over or waits for an answer. A waiting ("parked") completion keeps its slot and its rows of the
 * cache; the others go on. Its answer is appended as a segment of rows, and the first token of the next turn is drawn in
 * the same model call. No earlier row is computed again, and no drawn token is encoded again. Before the first turn, too, a
 * completion can wait for what the environment answers: then it begins with observed tokens.
 *
 * A server, whose requests come while others run, has an engine of rollout_new_lone() and calls the parts of rollout_run()
 * itself: rollout_begin(), then again and again rollout_gather(), rollout_add_prompts(), rollout_call() and rollout_take().
 *
 * Each token is drawn with the uniform number random_uniform(seed, stream + id, position), where id identifies the
 * sample and position is the token's index in the sequence. So a sample depends only on the weights, its prompt and its
 * id, not on slots, batch composition, order or threads, up to the rounding of the matrix products.
 *
 *     Rollout r;
 *     if (!rollout_new(&r, &model, slots, prompt_max, new_max, &e)) die("%s", e.text);
 *     RolloutRequest q = {.prompt = ids, .prompt_len = n, .samples = 8, .id = first_id, .out = completions};
 *     rollout_run(&r, &sampling, &q, 1, NULL, NULL, &e);          // fills in completions[0..7]
 *     for (int i = 0; i < 8; i++) completion_free(&completions[i]);
 *     rollout_free(&r);
 */
#ifndef LLMC_ROLLOUT_ROLLOUT_H
#define LLMC_ROLLOUT_ROLLOUT_H

#include "../base/clock.h"        /* clock_seconds */
#include "../base/error.h"        /* Error, xcalloc, error_set, xmalloc */
#include "../base/options.h"      /* OPTION_REAL, OPTION_INT, OPTION_LIST, OptionList */
#include "../base/random.h"       /* RANDOM_ROLLOUT */
#include "../base/text.h"         /* TokenList */
#include "../model/acts_cache.h"  /* ActivationCache */
#include "../model/backend.h"     /* Backend, Draw, Ints */
#include "../model/batch.h"       /* Batch, Segment */
#include "../model/config.h"      /* ModelConfig */
#include "../model/decode.h"      /* DecodeStep, model_decode */
#include "../model/model.h"       /* Model, model_sync */
#include "../model/model_text.h"  /* ModelText */
#include "../model/pack.h"        /* batch_segment, batch_target, batch_clear, batch_fits, ... */
#include "../model/transformer.h" /* model_flops */
#include "../model/workspace.h"   /* workspace_bytes, KVCache, RECOMPUTE_CACHED, Workspace, ... */
#include "../text/tokenizer.h"    /* tokenizer_special */
#include "stop_text.h"            /* STOP_TEXTS_MAX, StopTexts, stop_text_cut */
#include "trajectory.h"           /* Trajectory, STOP_CONTEXT_OVERFLOW, STOP_MAX_TOKENS, STOP_MAX_TURN_TOKENS, ... */

enum { ROLLOUT_STOPS = 8 };

/* What of a completion of several turns is its text: the last turn, or all that was drawn. */
typedef enum { SCOPE_LAST, SCOPE_ALL } RewardScope;

typedef struct Sampling {
    float temperature, top_p, min_p, repetition_penalty; /* temperature 0: greedy */
    int top_k;                                           /* 0: all */
    int max_new;                                         /* maximum tokens per completion, <= the engine's new_max */
    int32_t stop[ROLLOUT_STOPS];                         /* tokens that end a completion and are part of it */
    int stops;
    StopTexts texts; /* texts that end a completion */
    uint64_t seed, stream;
    RewardScope scope; /* of prompts_said() */
} Sampling;

static inline Sampling sampling_default(void) {
    return (Sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .stream = RANDOM_ROLLOUT};
}

/* Adds a token to those that end a completion. */
static inline bool sampling_add_stop(Sampling *s, int32_t token, Error *e) {
    for (int i = 0; i < s->stops; i++)
        if (s->stop[i] == token) return true;
    if (s->stops == ROLLOUT_STOPS)
        return error_set(e, "more than %d tokens end a completion, which is the limit", ROLLOUT_STOPS);
    s->stop[s->stops++] = token;
    return true;
}

/* Adds tokens to those that end a completion. */
static inline bool sampling_add_stops(Sampling *s, const TokenList *tokens, Error *e) {
    for (int32_t i = 0; i < tokens->count; i++)
        if (!sampling_add_stop(s, tokens->ids[i], e)) return false;
    return true;
}

/* Adds the words of --stop: names of special tokens, and other texts. */
static inline bool sampling_add_words(Sampling *s, const ModelText *t, const OptionList *words, Error *e) {
    if (words->count && !t->present) return error_set(e, "the model has no tokenizer");
    for (int i = 0; i < words->count; i++) {
        const char *word = words->items[i];
        const int32_t special = tokenizer_special(&t->tokenizer, word);
        if (!*word) return error_set(e, "the text is empty");
        if (special >= 0) {
            if (!sampling_add_stop(s, special, e)) return false;
            continue;
        }
        if (s->texts.count == STOP_TEXTS_MAX)
            return error_set(e, "more than %d texts end a completion, which is the limit", STOP_TEXTS_MAX);
        s->texts.tokenizer = &t->tokenizer;
        s->texts.text[s->texts.count++] = word;
    }
    return true;
}

/* Whether a token ends a completion. */
static inline bool sampling_is_stop(const Sampling *s, int32_t token) {
    for (int i = 0; i < s->stops; i++)
        if (s->stop[i] == token) return true;
    return false;
}

/* The options that every sampling program has. o: a struct with the doubles temperature, top_p, min_p and
 * repetition_penalty, the int64_t top_k and slots and the OptionList stop. coldest: lowest temperature; 0 if the program
 * can be greedy. */
// clang-format off
#define ROLLOUT_SAMPLING_OPTIONS(o, coldest, temperature_help)                                                         \
    OPTION_REAL("temperature",        0, &(o).temperature,        coldest, 100, temperature_help),                     \
    OPTION_INT ("top-k",              0, &(o).top_k,              0, 1 << 22,                                          \
                "sample from the k most likely tokens; 0 uses all"),                                                   \
    OPTION_REAL("top-p",              0, &(o).top_p,              0.001, 1,                                            \
                "sample from the most likely tokens with this total probability"),                                     \
    OPTION_REAL("min-p",              0, &(o).min_p,              0, 1,                                                \
                "leave out tokens below this fraction of the highest probability"),                                    \
    OPTION_REAL("repetition-penalty", 0, &(o).repetition_penalty, 0.01, 100,                                           \
                "penalty on tokens already seen; 1 disables"),                                                         \
    OPTION_LIST("stop",               0, &(o).stop,               "TEXT",                                              \
                "text or special token that ends a completion; may be repeated"),                                      \
    OPTION_INT ("slots",              0, &(o).slots,              1, 65536,                                            \
                "number of completions sampled at once; affects speed and memory")
// clang-format on

typedef struct Completion {
    int32_t *tokens; /* (count), room for new_max */
    float *logp;     /* (count) log-probability of each token under softmax(logits / temperature), whole vocabulary */
    int32_t count;
    bool finished; /* ended by a stop token, which is the last one, or by a stop text; false: truncated at the limit */
    Trajectory *trajectory; /* of a completion of several turns; NULL: all tokens were drawn, in one turn */
} Completion;

/* The tokens that the model drew, and their number. */
static inline int32_t completion_drawn(const Completion *c) {
    return c->trajectory ? c->trajectory->drawn_count : c->count;
}
static inline const int32_t *completion_drawn_ids(const Completion *c) {
    return c->trajectory ? c->trajectory->drawn_ids : c->tokens;
}

/* The mask of the drawn tokens; NULL: all. */
static inline const uint8_t *completion_mask(const Completion *c) {
    return c->trajectory ? c->trajectory->drawn : NULL;
}

/* The number of tokens that it observed before its first turn: they are a part of the prompt that only this one has. */
static inline int32_t completion_before(const Completion *c) {
    return c->trajectory && !c->trajectory->branches && c->trajectory->turns ? c->trajectory->start[0] : 0;
}

typedef struct RolloutRequest {
    const int32_t *prompt;
    int32_t prompt_len; /* 1 ... prompt_max */
    int32_t held;       /* tokens after them that the environment puts at the start of each completion, around its first
                         * observation (episodes.h) */
    int32_t samples;
    uint64_t id;        /* id of the first sample; the ids of the others follow it */
    Completion *out;    /* (samples) written; free each with completion_free() */
    const void *record; /* for the environment: the prompt's record (episodes.h) */
    int32_t slot;       /* of a lone engine: 1 + the slot that the sample takes, which must be free; 0: any */
    int32_t cached; /* first tokens of the prompt, fewer than all, that an earlier sample has left in the cache of this
                     * slot; 0 except with `slot`, or in a lone engine of one slot */
    /* 1 + its first row in the engine's activation cache, of rollout_activation_rows(); 0: it is not put there */
    int64_t activations;
} RolloutRequest;

/* Sample `sample` of request number `request`. */
typedef struct RolloutSample {
    const RolloutRequest *q;
    int64_t request;
    int32_t sample;
} RolloutSample;

/* What follows a turn: tokens that are appended to the sample, or its end. */
typedef struct RolloutAnswer {
    int64_t request;
    int32_t sample;
    const int32_t *ids; /* (count) valid until the next call */
    int32_t count;
    uint64_t state; /* hash of the answer, for Trajectory.state */
    bool over;
    int32_t remove;      /* last tokens of the turn that are removed first; only with count > 0 */
    int32_t turn_tokens; /* maximum tokens of the next turn; 0: RolloutTurns.turn_tokens */
} RolloutAnswer;

/* An environment, which answers the turns of samples. Its functions set Trajectory.stop when they end a sample. */
typedef struct RolloutTurns {
    void *context;
    int32_t turn_tokens;       /* maximum tokens of a turn; 0: none but the limit of the completion */
    StopTexts ends;            /* texts that end a turn and are part of it */
    const int32_t *end_tokens; /* (end_token_count) tokens that end a turn and are part of it */
    int end_token_count;
    bool specials; /* special tokens are part of what a person is shown */
    bool cut;      /* turn() is also called for turns that turn_tokens cut, of which Completion.finished is false */
    bool together; /* the samples of a request may wait for one another: each needs a slot */
    /* The prompt of a sample is being computed. Returns whether the sample is parked before its first turn: an answer of at least
     * one token will come. NULL: none is. */
    bool (*open)(void *context, const RolloutSample *who, const Completion *c);
    /* A turn has ended by an end token or an end text. Returns whether the sample is parked: an answer will come. */
    bool (*turn)(void *context, const RolloutSample *who, const Completion *c);
    /* Sets *answer to an answer that has come and returns 1; returns 0 if there is none, after waiting for one if `wait`
     * is set; -1: failed. */
    int (*ready)(void *context, bool wait, RolloutAnswer *answer, Error *e);
    /* A sample has ended: trajectory->stop says why. */
    void (*end)(void *context, const RolloutSample *who, const Completion *c);
    /* All samples have ended. Waits for what the environment still owes. */
    bool (*finish)(void *context, Error *e);
} RolloutTurns;

/* Called for each token, in the order of sampling. */
typedef void (*RolloutWatch)(void *context, int64_t request, int32_t sample, int32_t token);

/* A sample in progress; prompt_area -1: the slot is free. */
typedef struct RolloutSlot {
    int prompt_area;
    int64_t request;
    int32_t sample;
    int slot; /* the slot that it runs in; -1: it waits for one */
} RolloutSlot;

typedef struct RolloutWaiting {
    int64_t request;
    int32_t sample;
    int prompt_area;
} RolloutWaiting;

typedef struct Rollout {
    const Model *model;
    int slots, prompt_max, new_max;
    int stride; /* cache rows of a slot */
    bool lone;  /* every request has one sample, which begins at the first row of its slot */
    /* The limit, stop tokens and stop texts of each request; NULL: those of the run. Other settings are those of the run,
     * unless `decode` draws by them. */
    const Sampling **how;
    Workspace work;
    KVCache kv;
    Batch batch;
    RolloutSlot *slot;       /* (slots) */
    int *area_users;         /* (slots) number of samples that still need the prompt area */
    RolloutWaiting *waiting; /* queue of samples that have their first token and wait for a slot */
    int waiting_first, waiting_count, waiting_capacity;
    int32_t *cache_row;      /* (rows) */
    int32_t *activation_row; /* (rows) in the activation cache of `work`, if it has one */
    int32_t *stream, *index; /* (targets, 2), (targets) */
    int32_t *token;          /* (targets) */
    float *logp;
    RolloutSlot *target; /* (targets) the sample of each target */
    Ints *history;       /* (targets, prompt_max + new_max) on the device; NULL until a repetition penalty needs it */
    int32_t *history_host, *history_len;
    int64_t steps, tokens;     /* model calls and tokens drawn so far */
    double *flops;             /* the FLOPs of model calls are added here; NULL: nowhere */
    const RolloutTurns *turns; /* the environment of completions of several turns; NULL: none */
    int parked;                /* samples that wait for an answer */
    double used_seconds,
        parked_seconds; /* with an environment: of all slots, with a sample; of them, with a parked one */
    int64_t observed;   /* tokens */
    /* Replaces model_decode() for sampling from several models (mixture.h); NULL: not replaced. */
    void (*decode)(void *context, const Model *m, const Workspace *w, const KVCache *kv, const Batch *batch, Draw how,
                   const DecodeStep *step);
    void *decode_context;
    /* Replaces rollout_run(): fills in the completions in another way (../serve/agents.h); NULL: not replaced. */
    bool (*run)(void *context, const Sampling *s, RolloutRequest *requests, int64_t n, Error *e);
    void *run_context;
} Rollout;

static inline void completion_free(Completion *c) {
    free(c->tokens), free(c->logp);
    trajectory_free(c->trajectory);
    *c = (Completion){0};
}

static inline int rollout_rows(int slots, int prompt_max) { return slots + (prompt_max > 512 ? prompt_max : 512); }

/* Rows of an activation cache (../model/acts_cache.h) that a request takes: those of its prompt, then `limit` - 1 for
 * each sample, where `limit` is the smaller one of Sampling.max_new and the engine's new_max. */
static inline int64_t rollout_activation_rows(int32_t prompt_len, int32_t samples, int limit) {
    return prompt_len + (int64_t)samples * (limit - 1);
}

/* Bytes that rollout_new() allocates on the device. */
static inline size_t rollout_bytes(const ModelConfig *c, const Backend *b, int slots, int prompt_max, int new_max) {
    const int rows = rollout_rows(slots, prompt_max);
    return workspace_bytes(c, b, rows, rows, rows, false, 0) + kv_bytes(c, b, slots * (prompt_max + new_max));
}

/* Bytes by which rollout_new_with() allocates more for an engine that can have an activation cache. */
static inline size_t rollout_caching_bytes(const ModelConfig *c, const Backend *b, int slots, int prompt_max) {
    const int rows = rollout_rows(slots, prompt_max);
    return workspace_bytes(c, b, rows, rows, rows, true, RECOMPUTE_CACHED) -
           workspace_bytes(c, b, rows, rows, rows, false, 0);
}

static inline void rollout_free(Rollout *r) {
    if (!r->model) return;
    workspace_free(&r->work, r->model);
    kv_free(&r->kv, r->model);
    batch_free(&r->batch);
    if (r->history) r->model->backend->release(r->model->device, r->history);
    free(r->slot), free(r->area_users), free(r->waiting), free(r->cache_row), free(r->activation_row);
    free(r->stream), free(r->index);
    free(r->token), free(r->logp), free(r->target), free(r->history_host), free(r->history_len);
    *r = (Rollout){0};
}

/* Allocates what an engine needs, whose model, sizes and stride are set. caches: its workspace can have a cache. */
static inline bool rollout_alloc(Rollout *r, bool caches, Error *e) {
    const Model *m = r->model;
    const int slots = r->slots, rows = rollout_rows(slots, r->prompt_max);
    r->slot = (RolloutSlot *)xcalloc((size_t)slots, sizeof *r->slot);
    r->area_users = (int *)xcalloc((size_t)slots, sizeof *r->area_users);
    r->cache_row = (int32_t *)xcalloc((size_t)rows, sizeof(int32_t));
    r->activation_row = (int32_t *)xcalloc((size_t)rows, sizeof(int32_t));
    r->stream = (int32_t *)xcalloc(2 * (size_t)rows, sizeof(int32_t));
    r->index = (int32_t *)xcalloc((size_t)rows, sizeof(int32_t));
    r->token = (int32_t *)xcalloc((size_t)rows, sizeof(int32_t));
    r->logp = (float *)xcalloc((size_t)rows, sizeof(float));
    r->target = (RolloutSlot *)xcalloc((size_t)rows, sizeof *r->target);
    r->batch = batch_new(rows, rows, rows);
    if (workspace_new(&r->work, m, rows, rows, rows, caches, caches ? RECOMPUTE_CACHED : 0, e) &&
        kv_new(&r->kv, m, slots * r->stride, e))
        return true;
    rollout_free(r);
    return false;
}

/* slots: number of samples that run at once; prompt_max, new_max: maximum tokens of a prompt and of a completion. caches: the
 * engine can have an activation cache, of rollout_cache(). */
static inline bool rollout_new_with(Rollout *r, const Model *m, int slots, int prompt_max, int new_max, bool caches,
                                    Error *e) {
    *r = (Rollout){
        .model = m, .slots = slots, .prompt_max = prompt_max, .new_max = new_max, .stride = prompt_max + new_max};
    return rollout_alloc(r, caches, e);
}

static inline bool rollout_new(Rollout *r, const Model *m, int slots, int prompt_max, int new_max, Error *e) {
    return rollout_new_with(r, m, slots, prompt_max, new_max, false, e);
}

/* Sets the cache into which the activations of requests with `activations` go; NULL: none. */
static inline void rollout_cache(Rollout *r, ActivationCache *cache) {
    assert(!cache || r->work.train);
    r->work.cache = cache;
    r->work.cache_row = r->activation_row;
}

/* The same for requests of one sample each, whose prompt and completion together have at most `length` >= 2 tokens. */
static inline bool rollout_new_lone(Rollout *r, const Model *m, int slots, int length, Error *e) {
    *r = (Rollout){
        .model = m, .slots = slots, .prompt_max = length - 1, .new_max = length - 1, .stride = length, .lone = true};
    return rollout_alloc(r, false, e);
}

/* Maximum tokens of a completion. */
static inline int rollout_most(const Rollout *r, const Sampling *s) {
    return s->max_new < r->new_max ? s->max_new : r->new_max;
}

/* Maximum tokens of a completion to a prompt of this length. */
static inline int rollout_limit(const Rollout *r, const Sampling *s, int32_t prompt_len) {
    const int context = r->model->config.context;
    const int room = (r->lone && r->stride < context ? r->stride : context) - prompt_len;
    const int most = rollout_most(r, s);
    return room < most ? room : most;
}

/* Appends a sample to the queue. */
static inline void rollout_wait(Rollout *r, int64_t request, int32_t sample, int area) {
    if (r->waiting_count == r->waiting_capacity) {
        RolloutWaiting *grown = (RolloutWaiting *)xcalloc(2 * (size_t)r->waiting_capacity + 64, sizeof *grown);
        for (int i = 0; i < r->waiting_count; i++) grown[i] = r->waiting[(r->waiting_first + i) % r->waiting_capacity];
        free(r->waiting);
        r->waiting = grown;
        r->waiting_first = 0;
        r->waiting_capacity = 2 * r->waiting_capacity + 64;
    }
    r->waiting[(r->waiting_first + r->waiting_count++) % r->waiting_capacity] = (RolloutWaiting){request, sample, area};
}

/* Makes the target just added to the batch draw the next token of this sample. */
static inline void rollout_aim(Rollout *r, const Sampling *s, const RolloutRequest *q, RolloutSlot who) {
    const int t = r->batch.targets - 1;
    const uint64_t stream = s->stream + q->id + (uint64_t)who.sample;
    r->stream[2 * t] = (int32_t)(uint32_t)stream;
    r->stream[2 * t + 1] = (int32_t)(uint32_t)(stream >> 32);
    const Completion *c = &q->out[who.sample];
    r->index[t] = q->prompt_len + c->count + (c->trajectory ? c->trajectory->removed : 0);
    r->target[t] = who;
}

/* Uploads the tokens that precede each target, for the repetition penalty. */
static inline bool rollout_history(Rollout *r, const RolloutRequest *requests, DecodeStep *step, Error *e) {
    const int stride = r->prompt_max + r->new_max;
    const size_t count = (size_t)r->batch.targets_max * (size_t)stride;
    const Backend *b = r->model->backend;
    if (!r->history) {
        r->history = (Ints *)b->alloc(r->model->device, count * sizeof(int32_t), "token history", e);
        if (!r->history) return false;
        r->history_host = (int32_t *)xmalloc(count * sizeof(int32_t));
        r->history_len = (int32_t *)xcalloc((size_t)r->batch.targets_max, sizeof(int32_t));
    }
    for (int t = 0; t < r->batch.targets; t++) {
        const RolloutRequest *q = &requests[r->target[t].request];
        const Completion *c = &q->out[r->target[t].sample];
        int32_t *seen = r->history_host + (size_t)t * (size_t)stride;
        memcpy(seen, q->prompt, (size_t)q->prompt_len * sizeof *seen);
        memcpy(seen + q->prompt_len, c->tokens, (size_t)c->count * sizeof *seen);
        r->history_len[t] = q->prompt_len + c->count;
    }
    b->upload(r->model->device, r->history, r->history_host,
              (size_t)r->batch.targets * (size_t)stride * sizeof(int32_t));
    step->history = r->history;
    step->history_len = r->history_len;
    step->history_stride = stride;
    return true;
}

/* Cache row of a slot's first new token, just after the end of its prompt area. */
static inline int rollout_new_row(const Rollout *r, const RolloutRequest *q, int area) {
    return area * r->stride + (r->lone ? q->prompt_len : r->prompt_max);
}

/* Whether a sample waits before its first turn. It is parked, and takes a slot like a sample that has its first token. */
static inline bool rollout_parks_first(Rollout *r, RolloutRequest *q, const RolloutSlot *who) {
    Completion *c = &q->out[who->sample];
    if (!r->turns || !r->turns->open) return false;
    if (!r->turns->open(r->turns->context, &(RolloutSample){q, who->request, who->sample}, c)) return false;
    c->trajectory->parked = true;
    r->parked++;
    if (who->slot < 0) rollout_wait(r, who->request, who->sample, who->prompt_area);
    return true;
}

/* Adds prompts to the batch while there are free slots for their samples: one segment per prompt, one target per
 * sample that draws at once. Skips requests for no samples. */
static inline void rollout_add_prompts(Rollout *r, const Sampling *s, RolloutRequest *requests, int64_t n,
                                       int64_t *next, int free_slots) {
    for (; *next < n && free_slots > r->waiting_count; ++*next) {
        RolloutRequest *q = &requests[*next];
        if (q->samples < 1) continue;
        int area = 0;
        const bool alone = q->samples == 1; /* its sample takes the slot at once */
        while (area < r->slots && (r->area_users[area] || (alone && r->slot[area].prompt_area >= 0))) area++;
        if (q->slot) area = q->slot - 1;
        if (area == r->slots || !batch_fits(&r->batch, q->prompt_len - q->cached, q->samples, 1)) return;
        assert(!q->slot || (r->lone && !r->area_users[area] && r->slot[area].prompt_area < 0));
        assert(!q->cached || (r->lone && (q->slot || r->slots == 1) && q->cached < q->prompt_len));
        const int segment = batch_segment(&r->batch, q->prompt + q->cached, q->prompt_len - q->cached, q->cached, -1);
        Segment *g = &r->batch.segment[segment];
        g->key_start = rollout_new_row(r, q, area) - q->prompt_len;
        g->past = q->cached;
        for (int32_t i = 0; i < g->len; i++) {
            r->cache_row[g->start + i] = g->key_start + g->past + i;
            r->activation_row[g->start + i] = q->activations ? (int32_t)q->activations - 1 + g->past + i : -1;
        }
        for (int32_t k = 0; k < q->samples; k++) {
            const RolloutSlot who = {area, *next, k, alone ? area : -1};
            if (alone) r->slot[area] = who;
            if (q->out[k].trajectory) trajectory_start(q->out[k].trajectory, clock_seconds());
            const bool parks = rollout_parks_first(r, q, &who);
            free_slots -= alone || !parks; /* a parked one without a slot counts among those that wait */
            if (parks) continue;
            batch_target(&r->batch, batch_last_row(&r->batch, segment), 0);
            rollout_aim(r, s, q, who);
        }
        r->area_users[area] = q->samples;
    }
}

/* The number of a sample's tokens whose keys and values are in the cache. */
static inline int32_t rollout_cached(const Completion *c) {
    return c->trajectory ? c->trajectory->cached : c->count - 1;
}

/* Adds the next `len` tokens of a running sample that are not in the cache: rows that attend to its prompt and to its own
 * tokens. If they are the last ones, the next token is drawn. */
static inline void rollout_add_sample(Rollout *r, const Sampling *s, RolloutRequest *requests, int slot, int32_t len) {
    const RolloutSlot who = r->slot[slot];
    RolloutRequest *q = &requests[who.request];
    Completion *c = &q->out[who.sample];
    const int first = rollout_new_row(r, q, slot);
    const int prompt = rollout_new_row(r, q, who.prompt_area) - q->prompt_len;
    const int32_t cached = rollout_cached(c);
    const int g = batch_segment(&r->batch, c->tokens + cached, len, q->prompt_len + cached, -1);
    Segment *segment = &r->batch.segment[g];
    if (q->samples == 1) {
        segment->key_start = prompt;
        segment->past = q->prompt_len + cached;
    } else {
        segment->prefix_start = prompt;
        segment->prefix_len = q->prompt_len;
        segment->key_start = first;
        segment->past = cached;
    }
    const int64_t row = q->activations - 1 + rollout_activation_rows(q->prompt_len, who.sample, rollout_most(r, s));
    for (int32_t i = 0; i < len; i++) {
        r->cache_row[segment->start + i] = first + cached + i;
        r->activation_row[segment->start + i] = q->activations ? (int32_t)row + cached + i : -1;
    }
    if (c->trajectory) c->trajectory->cached += len;
    if (cached + len < c->count) return;
    batch_target(&r->batch, segment->start + len - 1, 0);
    rollout_aim(r, s, q, who);
}

/* Adds the running samples to the batch: first those of one new token, then the others, as far as there are rows. */
static inline void rollout_add_samples(Rollout *r, const Sampling *s, RolloutRequest *requests) {
    for (int longer = 0; longer < (r->turns ? 2 : 1); longer++)
        for (int i = 0; i < r->slots; i++) {
            if (r->slot[i].prompt_area < 0) continue;
            const Completion *c = &requests[r->slot[i].request].out[r->slot[i].sample];
            const int32_t rows = c->count - rollout_cached(c), left = r->batch.rows_max - r->batch.rows;
            if (c->trajectory && c->trajectory->parked) continue;
            if ((rows > 1) == longer && left) rollout_add_sample(r, s, requests, i, rows < left ? rows : left);
        }
}

/* Appends a token; returns whether the completion, or its turn, has ended. */
static inline bool rollout_append(const Rollout *r, const Sampling *s, const RolloutRequest *q, Completion *c,
                                  int32_t token, float logp) {
    const int32_t first = c->trajectory ? c->trajectory->first : 0;
    c->tokens[c->count] = token;
    if (c->trajectory) c->trajectory->drawn[c->count] = 1;
    c->logp[c->count++] = logp;
    const int32_t n = c->count - first;
    c->finished = sampling_is_stop(s, token) || stop_text_cut(&s->texts, c->tokens + first, n) > 0;
    if (!r->turns) return c->finished || c->count >= rollout_limit(r, s, q->prompt_len);
    const RolloutTurns *turns = r->turns;
    for (int i = 0; i < turns->end_token_count; i++) c->finished = c->finished || token == turns->end_tokens[i];
    if (!c->finished) c->finished = stop_text_cut(&turns->ends, c->tokens + first, n) > 0;
    const int32_t most = c->trajectory->turn_tokens ? c->trajectory->turn_tokens : turns->turn_tokens;
    return c->finished || c->count >= rollout_limit(r, s, q->prompt_len) || (most && n >= most);
}

/* ---- turns ----------------------------------------------------------------------------------------------------- */

/* Ends a sample of several turns. */
static inline void rollout_end(Rollout *r, const RolloutSample *who, Completion *c) {
    c->finished = !trajectory_truncated(c->trajectory->stop);
    trajectory_count(c->trajectory, c->tokens, c->count);
    r->turns->end(r->turns->context, who, c);
}

/* A turn has ended. Returns whether the sample is over; otherwise it is parked. */
static inline bool rollout_turn(Rollout *r, const Sampling *s, const RolloutSample *who) {
    Completion *c = &who->q->out[who->sample];
    Trajectory *y = c->trajectory;
    y->ended[y->turns - 1] = (float)(clock_seconds() - y->started);
    const bool cut = !c->finished && r->turns->cut && c->count < rollout_limit(r, s, who->q->prompt_len);
    if ((c->finished || cut) && r->turns->turn(r->turns->context, who, c)) {
        y->parked = true;
        r->parked++;
        return false;
    }
    if (c->finished || (cut && y->stop != STOP_NONE)) {
        rollout_end(r, who, c);
        return true;
    }
    if (c->count < rollout_limit(r, s, who->q->prompt_len)) y->stop = STOP_MAX_TURN_TOKENS;
    else if (who->q->prompt_len + c->count >= r->model->config.context) y->stop = STOP_CONTEXT_OVERFLOW;
    else y->stop = STOP_MAX_TOKENS;
    rollout_end(r, who, c);
    return true;
}

/* Frees what a sample holds. */
static inline void rollout_release(Rollout *r, RolloutSlot who) {
    r->area_users[who.prompt_area]--;
    if (who.slot >= 0) r->slot[who.slot].prompt_area = -1;
}

/* Removes a sample from the slots, or from those that wait for one. */
static inline void rollout_remove(Rollout *r, int64_t request, int32_t sample) {
    for (int i = 0; i < r->slots; i++) {
        const RolloutSlot *w = &r->slot[i];
        if (w->prompt_area < 0 || w->request != request || w->sample != sample) continue;
        rollout_release(r, (RolloutSlot){w->prompt_area, request, sample, i});
        return;
    }
    int kept = 0;
    for (int i = 0; i < r->waiting_count; i++) {
        const RolloutWaiting w = r->waiting[(r->waiting_first + i) % r->waiting_capacity];
        if (w.request == request && w.sample == sample) r->area_users[w.prompt_area]--;
        else r->waiting[(r->waiting_first + kept++) % r->waiting_capacity] = w;
    }
    r->waiting_count = kept;
}

/* Appends the tokens of an answer to its sample, which goes on; or ends it. */
static inline void rollout_answer(Rollout *r, const Sampling *s, RolloutRequest *requests, const RolloutAnswer *a) {
    RolloutRequest *q = &requests[a->request];
    Completion *c = &q->out[a->sample];
    Trajectory *y = c->trajectory;
    const RolloutSample who = {q, a->request, a->sample};
    const bool first = !c->count; /* the answer comes before the first turn */
    y->parked = false;
    r->parked--;
    bool over = a->over;
    if (!over && a->remove) {
        c->count -= a->remove;
        y->removed += a->remove;
        if (y->cached > c->count) y->cached = c->count;
    }
    if (!over && c->count + a->count >= rollout_limit(r, s, q->prompt_len)) {
        const bool full = q->prompt_len + c->count + a->count >= r->model->config.context;
        y->stop = first  ? STOP_TOOL_FAILED
                  : full ? STOP_CONTEXT_OVERFLOW
                         : STOP_MAX_TOKENS; /* first: nothing is drawn */
        over = true;
    }
    if (over) {
        rollout_end(r, &who, c);
        rollout_remove(r, a->request, a->sample);
        return;
    }
    if (a->count) memcpy(c->tokens + c->count, a->ids, (size_t)a->count * sizeof *a->ids);
    memset(c->logp + c->count, 0, (size_t)a->count * sizeof *c->logp);
    memset(y->drawn + c->count, 0, (size_t)a->count);
    c->count += a->count;
    r->observed += a->count;
    y->first = c->count;
    y->turn_tokens = a->turn_tokens;
    if (first) y->turns = 0; /* the first turn begins here */
    trajectory_turn(y);
    y->began[y->turns - 1] = (float)(clock_seconds() - y->started);
    y->state[y->turns - 1] = a->state;
}

/* Takes the answers that have come. wait: waits for at least one. */
static inline bool rollout_answers(Rollout *r, const Sampling *s, RolloutRequest *requests, bool wait, Error *e) {
    RolloutAnswer a;
    for (int more; r->parked; wait = false) {
        more = r->turns->ready(r->turns->context, wait, &a, e);
        if (more < 0) return false;
        if (!more) break;
        rollout_answer(r, s, requests, &a);
    }
    return true;
}

/* ---- the run --------------------------------------------------------------------------------------------------- */

/* Checks a prompt of n tokens; number: its place, for messages. */
static inline bool rollout_check(const Rollout *r, const RolloutRequest *q, int64_t number, Error *e) {
    const int T = r->model->config.context, V = r->model->config.vocab;
    if (q->prompt_len < 1) return error_set(e, "prompt %lld: it is empty", (long long)number);
    if (q->prompt_len > r->prompt_max || q->prompt_len >= T)
        return error_set(e, "prompt %lld: it has %d tokens, at most %d fit (context %d)", (long long)number,
                         q->prompt_len, r->prompt_max < T ? r->prompt_max : T - 1, T);
    if (q->samples > r->batch.targets_max - r->slots)
        return error_set(e, "prompt %lld: %d samples, at most %d can be sampled at once", (long long)number, q->samples,
                         r->batch.targets_max - r->slots);
    if (r->turns && r->turns->together && q->samples > r->slots)
        return error_set(e, "prompt %lld: %d samples, which may wait for one another, need as many slots (--slots %d)",
                         (long long)number, q->samples, r->slots);
    for (int32_t k = 0; k < q->prompt_len; k++)
        if (q->prompt[k] < 0 || q->prompt[k] >= V)
            return error_set(e, "prompt %lld: token %d is outside the vocabulary of %d", (long long)number,
                             q->prompt[k], V);
    return true;
}

/* Allocates the completions of a request. */
static inline void rollout_open(const Rollout *r, const Sampling *s, RolloutRequest *q) {
    const size_t room = (size_t)rollout_most(r, s);
    for (int k = 0; k < q->samples; k++)
        q->out[k] = (Completion){.tokens = (int32_t *)xmalloc(room * sizeof(int32_t)),
                                 .logp = (float *)xmalloc(room * sizeof(float)),
                                 .trajectory = r->turns ? trajectory_new(room) : NULL};
}

/* Frees all slots. */
static inline void rollout_begin(Rollout *r) {
    for (int i = 0; i < r->slots; i++) {
        r->slot[i].prompt_area = -1;
        r->area_users[i] = 0;
    }
    r->waiting_count = r->parked = 0;
}

/* Gives free slots to the samples that wait for one, and fills the batch with the running samples. Returns the number of
 * free slots. */
static inline int rollout_gather(Rollout *r, const Sampling *s, RolloutRequest *requests) {
    int free_slots = 0;
    for (int i = 0; i < r->slots; i++) { /* refill */
        if (r->slot[i].prompt_area < 0 && r->waiting_count) {
            const RolloutWaiting w = r->waiting[r->waiting_first];
            r->waiting_first = (r->waiting_first + 1) % r->waiting_capacity;
            r->waiting_count--;
            r->slot[i] = (RolloutSlot){w.prompt_area, w.request, w.sample, i};
        }
        free_slots += r->slot[i].prompt_area < 0;
    }
    batch_clear(&r->batch);
    rollout_add_samples(r, s, requests);
    return free_slots;
}

/* Runs the batch and draws a token for each of its targets. */
static inline bool rollout_call(Rollout *r, const Sampling *s, const RolloutRequest *requests, Error *e) {
    const Draw how = {.temperature = s->temperature,
                      .top_p = s->top_p,
                      .min_p = s->min_p,
                      .top_k = s->top_k,
                      .repetition_penalty = s->repetition_penalty,
                      .seed = s->seed};
    DecodeStep step = {
        .slot = r->cache_row, .stream = r->stream, .index = r->index, .token = r->token, .logp = r->logp};
    if (s->repetition_penalty != 1.0f && !rollout_history(r, requests, &step, e)) return false;
    if (r->decode) r->decode(r->decode_context, r->model, &r->work, &r->kv, &r->batch, how, &step);
    else model_decode(r->model, &r->work, &r->kv, &r->batch, how, &step);
    if (!model_sync(r->model, e)) return false;
    r->steps++;
    r->tokens += r->batch.targets;
    if (r->flops) {
        const Batch *b = &r->batch;
        *r->flops += model_flops(&r->model->config, b->rows, b->targets, batch_pairs(b), 1);
    }
    return true;
}

/* Appends the drawn tokens to their samples, and frees the slots of those that have ended. watch may be NULL. */
static inline void rollout_take(Rollout *r, const Sampling *s, RolloutRequest *requests, RolloutWatch watch,
                                void *context) {
    for (int t = 0; t < r->batch.targets; t++) {
        const RolloutSlot who = r->target[t];
        const RolloutRequest *q = &requests[who.request];
        bool over =
            rollout_append(r, r->how ? r->how[who.request] : s, q, &q->out[who.sample], r->token[t], r->logp[t]);
        if (watch) watch(context, who.request, who.sample, r->token[t]);
        if (over && r->turns) over = rollout_turn(r, s, &(RolloutSample){q, who.request, who.sample});
        if (!over && who.slot < 0) rollout_wait(r, who.request, who.sample, who.prompt_area);
        if (over) rollout_release(r, who);
    }
}

/* The number of slots that have a sample, and in *parked of those whose sample is parked. */
static inline int rollout_used(const Rollout *r, const RolloutRequest *requests, int *parked) {
    int used = 0;
    *parked = 0;
    for (int i = 0; i < r->slots; i++) {
        const RolloutSlot *s = &r->slot[i];
        if (s->prompt_area < 0) continue;
        const Trajectory *y = requests[s->request].out[s->sample].trajectory;
        used++;
        *parked += y && y->parked;
    }
    return used;
}

/* Draws all samples of n requests and fills in each out[]. watch may be NULL. Fails before sampling if a prompt is
 * empty, is longer than prompt_max, leaves no room in the context or contains a token outside the vocabulary. */
static inline bool rollout_run(Rollout *r, const Sampling *s, RolloutRequest *requests, int64_t n, RolloutWatch watch,
                               void *context, Error *e) {
    if (s->max_new < 1) return error_set(e, "completions of at most %d tokens, expected at least 1", s->max_new);
    if (r->run) return r->run(r->run_context, s, requests, n, e);
    for (int64_t i = 0; i < n; i++)
        if (!rollout_check(r, &requests[i], i + 1, e)) return false;
    for (int64_t i = 0; i < n; i++) rollout_open(r, s, &requests[i]);
    rollout_begin(r);
    for (int64_t next = 0;;) {
        const double start = r->turns ? clock_seconds() : 0;
        if (r->parked && !rollout_answers(r, s, requests, false, e)) return false;
        const int free_slots = rollout_gather(r, s, requests);
        rollout_add_prompts(r, s, requests, n, &next, free_slots);
        if (!r->batch.rows && !r->parked) return !r->turns || r->turns->finish(r->turns->context, e);
        int parked = 0;
        const int used = r->turns ? rollout_used(r, requests, &parked) : 0;
        if (!r->batch.rows) {
            if (!rollout_answers(r, s, requests, true, e)) return false;
        } else {
            if (!rollout_call(r, s, requests, e)) return false;
            rollout_take(r, s, requests, watch, context);
        }
        if (!r->turns) continue;
        const double seconds = clock_seconds() - start;
        r->used_seconds += used * seconds;
        r->parked_seconds += parked * seconds;
    }
}

#endif
