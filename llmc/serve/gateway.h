/* gateway.h - records what programs draw from a model through the server: trajectories of tokens for a trainer.
 *
 * A trajectory is one run of a program (agents.h). It has a key, which its requests carry, and branches: sequences of tokens,
 * some of which the model drew. Each request continues a branch, or begins one:
 *
 *   1. A chat whose messages are those of a branch's last request, then its answer as it was given, then others: the tokens
 *      of the branch as they were drawn, then what the chat template writes for the other messages.
 *   2. Else a prompt whose tokens begin with those of a branch.
 *   3. Else a text that begins with that of a branch: the tokens of the branch, then those of the rest of the text.
 *   4. Else it begins a branch. A program that rewrites its history, or asks for two things, has several.
 *
 * So no token that was drawn is decoded and encoded again, and the model reads in training what it read when it drew. Of
 * several branches the longest is continued. The requests of a trajectory are answered one after another.
 *
 * A trajectory has at most `most` tokens, prompts included. An answer ends where they do (finish_reason length); a request
 * whose prompt alone is more is refused (context_length_exceeded). Settings of sampling are the trainer's, whatever a request
 * says, since log-probabilities are compared with those of the policy at its temperature.
 *
 *     ServeGateway g;
 *     ServeEngine x;
 *     Completion c;
 *     serve_gateway_open(&g, &x, 4, 512);
 *     ServeTrajectory *y = serve_trajectory_open(&g, 17);       // its requests have the path /r/KEY/v1/...
 *     serve_trajectory_close(&g, y);                            // after its program has ended
 *     while (!serve_trajectory_idle(&g, y)) usleep(1000);       // the engine runs in another thread
 *     serve_trajectory_take(y, &c);
 *     serve_gateway_close(&g);
 */
#ifndef LLMC_SERVE_GATEWAY_H
#define LLMC_SERVE_GATEWAY_H

#include "../base/error.h"         /* xrealloc, xmalloc, Error, xcalloc */
#include "../base/text.h"          /* TokenList, token_list_extend, token_list_free, TextBuffer, ... */
#include "../rollout/rollout.h"    /* Completion, Sampling, sampling_is_stop */
#include "../rollout/trajectory.h" /* Trajectory, trajectory_branch, trajectory_count, trajectory_new, ... */
#include "../text/tokenizer.h"     /* TOKENIZER_CONTINUES, TOKENIZER_SPECIALS, tokenizer_decode, ... */
#include "engine.h"                /* ServeEngine, ServeJob, serve_condition, serve_wait */
#include "request.h"               /* ServeRequest, ServeModel, serve_refuse, ServeFault, ... */
#include <jansson.h>
#include <pthread.h>
#include <sys/random.h>

enum { SERVE_KEY = 64, SERVE_BRANCH_BITS = 40 };

/* A sequence of tokens. */
typedef struct ServeBranch {
    int32_t *ids;   /* (count) */
    float *logp;    /* (count) of the drawn ones */
    uint8_t *drawn; /* (count) */
    int32_t count, room;
    int32_t *start; /* (turns) the first token of each answer */
    int32_t turns;
    json_t *messages; /* of a chat: those of its last request, and the answer; NULL: a text */
    json_t *tools;    /* of a chat that shows tools */
    bool whole;       /* its last token ends turns */
    int64_t order;    /* of its last answer */
} ServeBranch;

typedef struct ServeTrajectory {
    char key[SERVE_KEY];
    uint64_t id; /* of the sample */
    ServeBranch *branch;
    int32_t branches;
    int32_t tokens;     /* of all branches */
    int64_t answers;    /* given so far */
    int32_t calls;      /* of tools, in the answers */
    bool full;          /* a request was refused, or an answer cut, because there was no room */
    bool lowered;       /* the answer of the request has no more room than it may have tokens */
    int64_t overridden; /* requests with settings of sampling that are not the trainer's */
    int32_t continued;  /* the branch of the request; -1: it begins one */
    bool open, busy;    /* busy: a request is being answered */
    int users;          /* requests that know it */
} ServeTrajectory;

typedef struct ServeGateway {
    ServeEngine *engine;
    ServeTrajectory *trajectory; /* (count) */
    int count;
    int32_t most; /* tokens of a trajectory */
    pthread_cond_t changed;
} ServeGateway;

/* count: trajectories that are open at once. most: maximum tokens of each. */
static inline void serve_gateway_open(ServeGateway *g, ServeEngine *x, int count, int32_t most) {
    *g = (ServeGateway){.engine = x, .count = count, .most = most};
    g->trajectory = (ServeTrajectory *)xcalloc((size_t)count, sizeof *g->trajectory);
    serve_condition(&g->changed);
}

/* ---- branches -------------------------------------------------------------------------------------------------- */

static inline void serve_branch_free(ServeBranch *b) {
    free(b->ids), free(b->logp), free(b->drawn), free(b->start);
    json_decref(b->messages), json_decref(b->tools);
}

/* Appends n tokens. logp: NULL for observed ones. */
static inline void serve_branch_append(ServeBranch *b, const int32_t *ids, const float *logp, int32_t n) {
    if (b->count + n > b->room) {
        b->room = 2 * b->room + n + 64;
        b->ids = (int32_t *)xrealloc(b->ids, (size_t)b->room, sizeof *b->ids);
        b->logp = (float *)xrealloc(b->logp, (size_t)b->room, sizeof *b->logp);
        b->drawn = (uint8_t *)xrealloc(b->drawn, (size_t)b->room, sizeof *b->drawn);
    }
    for (int32_t i = 0; i < n; i++, b->count++) {
        b->ids[b->count] = ids[i];
        b->logp[b->count] = logp ? logp[i] : 0;
        b->drawn[b->count] = logp != NULL;
    }
}

/* Whether two values are equal; null is as good as none. */
static inline bool serve_same_value(const json_t *a, const json_t *b) {
    const bool none = !a || json_is_null(a), other = !b || json_is_null(b);
    return none || other ? none == other : json_equal(a, b);
}

/* Whether two messages, in the form of serve_message(), say the same. Ids of calls are not compared. */
static inline bool serve_same_message(const json_t *a, const json_t *b) {
    static const char *const names[] = {"role", "content", "name", "tool_call_id", "reasoning_content"};
    const json_t *calls = json_object_get(a, "tool_calls"), *others = json_object_get(b, "tool_calls");
    bool same = json_array_size(calls) == json_array_size(others);
    for (size_t i = 0; same && i < sizeof names / sizeof *names; i++)
        same = serve_same_value(json_object_get(a, names[i]), json_object_get(b, names[i]));
    for (size_t i = 0; same && i < json_array_size(calls); i++)
        same = serve_same_value(json_object_get(json_array_get(calls, i), "function"),
                                json_object_get(json_array_get(others, i), "function"));
    return same;
}

/* Whether a chat has the messages of a branch, and then others. */
static inline bool serve_branch_has_chat(const ServeBranch *b, const ServeRequest *q) {
    const size_t n = json_array_size(b->messages);
    bool same = b->messages && b->whole && n < json_array_size(q->messages) && serve_same_value(b->tools, q->tools);
    for (size_t i = 0; same && i < n; i++)
        same = serve_same_message(json_array_get(b->messages, i), json_array_get(q->messages, i));
    return same;
}

/* Rule 1: sets *more to the tokens of a chat's messages after those of the branch. Returns false if the chat does not have
 * those of the branch, or if the template cannot write the others there. */
static inline bool serve_branch_chat(const ServeBranch *b, const ServeModel *m, const ServeRequest *q,
                                     TokenList *more) {
    if (!serve_branch_has_chat(b, q)) return false;
    json_t *messages = json_array();
    for (size_t i = json_array_size(b->messages); i < json_array_size(q->messages); i++)
        json_array_append(messages, json_array_get(q->messages, i));
    const bool ok = serve_encode_answer(m, messages, more);
    json_decref(messages);
    return ok;
}

/* Rule 2: sets *more to the rest of a prompt that begins with the tokens of a branch. */
static inline bool serve_branch_ids(const ServeBranch *b, const TokenList *prompt, TokenList *more) {
    const int32_t n = b->count;
    if (prompt->count < n || memcmp(prompt->ids, b->ids, (size_t)n * sizeof *b->ids)) return false;
    token_list_extend(more, prompt->ids + n, prompt->count - n);
    return true;
}

/* Rule 3: sets *more to the tokens of the rest of a text that begins with that of a branch. */
static inline bool serve_branch_text(const ServeBranch *b, const ServeModel *m, const ServeRequest *q,
                                     TokenList *more) {
    const char *text = q->kind == SERVE_COMPLETION ? q->text[0] : NULL;
    TextBuffer said = {0};
    Error e;
    if (!text || !m->text->present) return false;
    text_clear(&said);
    tokenizer_decode(&m->text->tokenizer, b->ids, b->count, true, &said);
    const bool begins = said.length <= strlen(text) && !memcmp(said.text, text, said.length);
    const char *rest = text + said.length;
    text_free(&said);
    return begins && tokenizer_encode(&m->text->tokenizer, rest, strlen(rest), TOKENIZER_SPECIALS | TOKENIZER_CONTINUES,
                                      more, &e);
}

/* Finds the branch that a request continues, and sets its prompt to the tokens of the branch and those after them. Returns
 * -1 if it begins a branch. */
static inline int32_t serve_trajectory_continue(const ServeTrajectory *y, const ServeModel *m, ServeRequest *q) {
    int32_t found = -1;
    TokenList *prompt = &q->prompt[0], more = {0}, best = {0};
    for (int rule = 1; rule <= 3 && found < 0; rule++)
        for (int32_t k = 0; k < y->branches; k++) {
            const ServeBranch *b = &y->branch[k];
            if (found >= 0 && b->count <= y->branch[found].count) continue;
            more.count = 0;
            const bool fits = rule == 1   ? serve_branch_chat(b, m, q, &more)
                              : rule == 2 ? serve_branch_ids(b, prompt, &more)
                                          : serve_branch_text(b, m, q, &more);
            if (!fits) continue;
            found = k;
            const TokenList last = best;
            best = more;
            more = last;
        }
    if (found >= 0) {
        prompt->count = 0;
        token_list_extend(prompt, y->branch[found].ids, y->branch[found].count);
        token_list_extend(prompt, best.ids, best.count);
    }
    token_list_free(&more), token_list_free(&best);
    return found;
}

/* ---- requests -------------------------------------------------------------------------------------------------- */

/* The path without /r/KEY; key: "" if it has none. */
static inline const char *serve_gateway_path(const ServeGateway *g, const char *url, char key[SERVE_KEY]) {
    const char *end = g && !strncmp(url, "/r/", 3) ? strchr(url + 3, '/') : NULL;
    *key = 0;
    if (!end || end - (url + 3) >= SERVE_KEY) return url;
    snprintf(key, SERVE_KEY, "%.*s", (int)(end - (url + 3)), url + 3);
    return end;
}

/* The trajectory of this key, whose earlier requests are over; NULL: refused. To be left with serve_gateway_leave(). */
static inline ServeTrajectory *serve_gateway_enter(ServeGateway *g, const char *key, ServeFault *f) {
    ServeEngine *x = g->engine;
    ServeTrajectory *y = NULL;
    pthread_mutex_lock(&x->lock);
    for (int i = 0; i < g->count; i++)
        if (g->trajectory[i].open && !strcmp(g->trajectory[i].key, key)) y = &g->trajectory[i];
    if (y) y->users++;
    while (y && y->open && y->busy) serve_wait(x, &g->changed, 250);
    if (y && !y->open) {
        y->users--;
        y = NULL;
    }
    if (y) y->busy = true;
    pthread_mutex_unlock(&x->lock);
    if (!y) {
        serve_refuse(f, 401, "", "this is the key of no trajectory, or of one that has ended");
        serve_code(f, "invalid_api_key");
    }
    return y;
}

static inline void serve_gateway_leave(ServeGateway *g, ServeTrajectory *y) {
    pthread_mutex_lock(&g->engine->lock);
    y->busy = false;
    y->users--;
    pthread_cond_broadcast(&g->changed);
    pthread_cond_signal(&g->engine->work);
    pthread_mutex_unlock(&g->engine->lock);
}

/* Sets the trainer's settings in place of those of a request. */
static inline void serve_trajectory_settings(ServeTrajectory *y, const ServeModel *m, ServeRequest *q) {
    const Sampling *s = &m->standard;
    y->overridden += q->seeded || q->how.temperature != s->temperature || q->how.top_p != s->top_p ||
                     q->how.min_p != s->min_p || q->how.top_k != s->top_k;
    q->how.temperature = s->temperature;
    q->how.top_p = s->top_p;
    q->how.min_p = s->min_p;
    q->how.top_k = s->top_k;
}

/* Refuses a request whose prompt has no room. before: the tokens of the branch that it continues, 0 if it begins one. left: those
 * that the trajectory has left for the answer. */
static inline bool serve_trajectory_full(const ServeGateway *g, ServeTrajectory *y, const ServeRequest *q,
                                         int32_t before, int32_t left, ServeFault *f) {
    const char *name = serve_prompt_name(q);
    const int32_t n = q->prompt[0].count;
    y->full = true;
    if (left < 1)
        serve_refuse(
            f, 400, name,
            "the prompt has %d tokens, of which %d are new%s; a trajectory has at most %d tokens, and this one "
            "has %d (--max-completion-length)",
            n, n - before, y->branches && !before ? " because it continues none of the earlier requests" : "", g->most,
            y->tokens);
    else
        serve_refuse(f, 400, name,
                     "this model's maximum context length is %d tokens, but the prompt has %d and needs one more for "
                     "the answer",
                     g->engine->serve->length, n);
    return serve_code(f, "context_length_exceeded");
}

/* Makes a request one of a trajectory: its prompt has the tokens that were drawn, and its answer the room that is left. */
static inline bool serve_trajectory_prepare(const ServeGateway *g, ServeTrajectory *y, ServeRequest *q, ServeFault *f) {
    const ServeModel *m = g->engine->serve;
    bool ok = true;
    if (q->samples != 1)
        ok = serve_refuse(f, 400, "n", "n is 1 in a trajectory: each run of the program is one completion");
    else if (q->prompts != 1) ok = serve_refuse(f, 400, "prompt", "a request of a trajectory has one prompt");
    else if (q->echo) ok = serve_refuse(f, 400, "echo", "echo is not possible in a trajectory");
    if (ok) {
        serve_trajectory_settings(y, m, q);
        y->continued = serve_trajectory_continue(y, m, q);
        const int32_t n = q->prompt[0].count, before = y->continued < 0 ? 0 : y->branch[y->continued].count;
        const int32_t left = g->most - y->tokens - (n - before), room = m->length - n;
        if (left < 1 || room < 1) ok = serve_trajectory_full(g, y, q, before, left, f);
        y->lowered = q->how.max_new >= left || q->how.max_new >= room;
        if (q->how.max_new > left) q->how.max_new = left;
        if (q->how.max_new > room) q->how.max_new = room;
        q->named = true;
        q->id = y->id | (uint64_t)(y->continued < 0 ? y->branches : y->continued) << SERVE_BRANCH_BITS;
        q->number = y->id << 16 | (uint64_t)(y->answers & 0xFFFF);
    }
    if (!ok) serve_request_free(q);
    return ok;
}

/* Adds the answer of a job that is over. message: the assistant's, as it was given; NULL: of a text. */
static inline void serve_trajectory_record(ServeTrajectory *y, const ServeJob *job, const json_t *message) {
    const ServeRequest *q = &job->request;
    const Completion *c = &job->choice[0].c;
    if (!c->count) return;
    if (y->continued < 0) {
        y->branch = (ServeBranch *)xrealloc(y->branch, (size_t)y->branches + 1, sizeof *y->branch);
        y->continued = y->branches++;
        y->branch[y->continued] = (ServeBranch){0};
    }
    ServeBranch *b = &y->branch[y->continued];
    const int32_t before = b->count;
    serve_branch_append(b, q->prompt[0].ids + before, NULL, q->prompt[0].count - before);
    b->start = (int32_t *)xrealloc(b->start, (size_t)b->turns + 1, sizeof *b->start);
    b->start[b->turns++] = b->count;
    serve_branch_append(b, c->tokens, c->logp, c->count);
    b->whole = sampling_is_stop(&q->how, c->tokens[c->count - 1]);
    b->order = ++y->answers;
    y->tokens += b->count - before;
    y->full = y->full || (!c->finished && y->lowered);
    json_decref(b->messages), json_decref(b->tools);
    b->messages = NULL;
    b->tools = json_incref(q->tools);
    if (!message) return;
    ServeFault unused;
    json_t *said = serve_message(message, 0, &unused);
    y->calls += (int32_t)json_array_size(json_object_get(said, "tool_calls"));
    b->messages = json_copy(q->messages);
    if (said) json_array_append_new(b->messages, said);
}

/* ---- trajectories ---------------------------------------------------------------------------------------------- */

/* Forgets what a trajectory holds. */
static inline void serve_trajectory_clear(ServeTrajectory *y) {
    for (int32_t k = 0; k < y->branches; k++) serve_branch_free(&y->branch[k]);
    free(y->branch);
    *y = (ServeTrajectory){0};
}

/* Opens the trajectory of a sample; NULL: as many as possible are open. */
static inline ServeTrajectory *serve_trajectory_open(ServeGateway *g, uint64_t id) {
    unsigned char secret[16] = {0};
    ServeTrajectory *y = NULL;
    size_t got = 0;
    while (got < sizeof secret) {
        const ssize_t n = getrandom(secret + got, sizeof secret - got, 0);
        if (n > 0) got += (size_t)n;
    }
    pthread_mutex_lock(&g->engine->lock);
    for (int i = 0; i < g->count && !y; i++)
        if (!g->trajectory[i].open && !g->trajectory[i].users && !g->trajectory[i].key[0]) y = &g->trajectory[i];
    if (y) {
        *y = (ServeTrajectory){.id = id, .open = true};
        int at = snprintf(y->key, SERVE_KEY, "%llu-", (unsigned long long)id);
        for (size_t i = 0; i < sizeof secret; i++)
            at += snprintf(y->key + at, SERVE_KEY - (size_t)at, "%02x", secret[i]);
    }
    pthread_mutex_unlock(&g->engine->lock);
    return y;
}

/* Takes no more requests of a trajectory, and ends the running one. */
static inline void serve_trajectory_close(ServeGateway *g, ServeTrajectory *y) {
    ServeEngine *x = g->engine;
    pthread_mutex_lock(&x->lock);
    y->open = false;
    for (ServeJob *job = x->first; job; job = job->after)
        if (job->trajectory == y) job->cancelled = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&x->lock);
}

/* Whether a trajectory that is closed has no request any more. */
static inline bool serve_trajectory_idle(ServeGateway *g, const ServeTrajectory *y) {
    pthread_mutex_lock(&g->engine->lock);
    for (ServeJob *job = g->engine->first; job; job = job->after) /* one that was submitted meanwhile */
        if (job->trajectory == y) job->cancelled = true;
    const bool idle = !y->users;
    pthread_mutex_unlock(&g->engine->lock);
    return idle;
}

static inline int serve_branch_by_order(const void *a, const void *b) {
    const ServeBranch *x = (const ServeBranch *)a, *y = (const ServeBranch *)b;
    return (x->order > y->order) - (x->order < y->order);
}

/* Makes a completion of a trajectory that is idle, with its branches in the order of their last answers, and frees it. */
static inline void serve_trajectory_take(ServeTrajectory *y, Completion *c) {
    const size_t n = (size_t)y->tokens;
    Trajectory *t = trajectory_new(n);
    *c = (Completion){.tokens = (int32_t *)xmalloc((n + 1) * sizeof(int32_t)),
                      .logp = (float *)xmalloc((n + 1) * sizeof(float)),
                      .trajectory = t};
    if (y->branches) qsort(y->branch, (size_t)y->branches, sizeof *y->branch, serve_branch_by_order);
    for (int32_t k = 0, turn = 0; k < y->branches; k++) {
        const ServeBranch *b = &y->branch[k];
        trajectory_branch(t, c->count);
        for (int32_t i = 0; i < b->turns; i++, turn++) {
            t->first = c->count + b->start[i];
            if (turn) trajectory_turn(t);
            else t->start[0] = t->first;
        }
        memcpy(c->tokens + c->count, b->ids, (size_t)b->count * sizeof *b->ids);
        memcpy(c->logp + c->count, b->logp, (size_t)b->count * sizeof *b->logp);
        memcpy(t->drawn + c->count, b->drawn, (size_t)b->count);
        c->count += b->count;
    }
    if (y->branches) t->messages = json_incref(y->branch[y->branches - 1].messages);
    t->counts.calls = y->calls;
    trajectory_count(t, c->tokens, c->count);
    serve_trajectory_clear(y);
}

static inline void serve_gateway_close(ServeGateway *g) {
    if (!g->engine) return;
    for (int i = 0; i < g->count; i++) serve_trajectory_clear(&g->trajectory[i]);
    free(g->trajectory);
    pthread_cond_destroy(&g->changed);
    *g = (ServeGateway){0};
}

#endif
