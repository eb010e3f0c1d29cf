/* agents.h - programs that call the model by themselves: each completion is what one run of a program draws (--agent-cmd).
 *
 * The program is started once for each completion. It gets the row of data on its standard input, as one line of JSON, and in
 * its environment the address of a server of OpenAI's API with the policy, and a key that names its trajectory:
 *
 *   standard input     {"id":"12","prompt":"...","answer":"...","task":"...","fields":{},"seed":98765,"model":"policy"}
 *   OPENAI_BASE_URL    http://127.0.0.1:PORT/r/KEY/v1
 *   OPENAI_API_KEY     KEY
 *   OPENAI_MODEL       policy
 *
 * What it draws is recorded as tokens (gateway.h). The last line of its standard output may be a reward: a number, or an
 * object with a number `reward`. Its standard error is the trainer's.
 *
 * A program that ends with another status than 0, that takes longer than --agent-timeout, that draws nothing, or that gives
 * no reward where it has to, has failed: its completion has no reward (NaN), is counted, and the run ends if there are more
 * of them than --max-agent-failures allows. No process of a program remains after it, nor after the trainer.
 *
 *     Agents x;
 *     const AgentOptions options = agent_defaults();
 *     if (!agents_open(&x, &options, &model, &model_text, 64, 512, 42, false, &e)) die("%s", e.text);
 *     agents_attach(&x, &engine);                                       // a Rollout, whose rollout_run() then runs programs
 *     if (!rollout_run(&engine, &sampling, requests, n, NULL, NULL, &e)) die("%s", e.text);
 *     agents_close(&x);
 */
#ifndef LLMC_SERVE_AGENTS_H
#define LLMC_SERVE_AGENTS_H

#include "../base/clock.h"         /* clock_seconds */
#include "../base/error.h"         /* Error, error_set, xcalloc, checked_object, ... */
#include "../base/json_text.h"     /* json_utf8 */
#include "../base/process.h"       /* Process, process_kill, PROCESS_FAILED, PROCESS_LATE, ... */
#include "../base/random.h"        /* RANDOM_ENVIRONMENT, random_bits */
#include "../base/text.h"          /* TextBuffer, text_format, text_clear, text_free, ... */
#include "../model/model.h"        /* Model */
#include "../model/model_text.h"   /* ModelText */
#include "../rollout/prompts.h"    /* PromptText */
#include "../rollout/rollout.h"    /* RolloutRequest, Completion, completion_drawn, Rollout, ... */
#include "../rollout/trajectory.h" /* STOP_AGENT_FAILED, STOP_COMPLETED, STOP_MAX_TOKENS, Trajectory, ... */
#include "../tools/tool_format.h"  /* tool_format_free, tool_format_of_texts, tool_format_open */
#include "agent_options.h"         /* AGENT_WORKERS, AgentOptions */
#include "engine.h"                /* ServeEngine, serve_end, serve_engine_close, serve_engine_forget_prefixes, ... */
#include "gateway.h"               /* ServeTrajectory, serve_trajectory_close, ServeGateway, ... */
#include "http.h"                  /* ServeHttp, serve_http_close, serve_http_expire, serve_http_open */
#include "request.h"               /* ServeModel */
#include <jansson.h>
#include <signal.h>

#define AGENT_MODEL "policy"

enum { AGENT_OUTPUT = 1 << 16 }; /* bytes at the end of a program's output that are kept */

/* A program and its trajectory. */
typedef struct AgentRun {
    Process process; /* pid 0: it has ended */
    double started;
    TextBuffer in, out; /* its input, of which `sent` bytes are written; the end of its output */
    size_t sent;
    const RolloutRequest *q; /* NULL: there is no program */
    int32_t sample;
    ServeTrajectory *trajectory;
    int status; /* as waitpid()'s */
    bool late;
} AgentRun;

/* Since agents_count() was last called. */
typedef struct AgentCounts {
    int64_t runs, failures, timeouts, requests, branches, overridden;
    double seconds; /* of all runs */
} AgentCounts;

typedef struct Agents {
    AgentOptions o;
    int workers;
    bool rewarded; /* a program has to give a reward */
    uint64_t seed;
    ServeModel serve;
    ServeEngine engine;
    ServeGateway gateway;
    ServeHttp http;
    AgentRun *run; /* (workers) */
    AgentCounts counts;
    Error why; /* of the last failure */
} Agents;

/* ---- programs -------------------------------------------------------------------------------------------------- */

static inline json_t *agent_text(const char *text) { return json_utf8(text ? text : "", text ? strlen(text) : 0); }

/* The line that a program reads. */
static inline void agent_row(const Agents *x, const RolloutRequest *q, uint64_t id, TextBuffer *line) {
    const PromptText *r = (const PromptText *)q->record;
    const char *fields = r && r->fields && *r->fields ? r->fields : "{}";
    char name[32];
    snprintf(name, sizeof name, "%llu", (unsigned long long)id);
    json_t *row = json_pack("{s:s,s:o,s:o,s:o,s:o?,s:I,s:s}", "id", name, "prompt", agent_text(r ? r->text : NULL),
                            "answer", agent_text(r ? r->answer : NULL), "task", agent_text(r ? r->task : NULL),
                            "fields", json_loads(fields, JSON_ALLOW_NUL, NULL), "seed",
                            (json_int_t)(random_bits(x->seed, RANDOM_ENVIRONMENT + id, 0) >> 11), "model", AGENT_MODEL);
    char *text = (char *)checked_object(json_dumps(row, JSON_COMPACT), "a row for the program of --agent-cmd");
    text_clear(line);
    text_string(line, text);
    text_string(line, "\n");
    free(text);
    json_decref(row);
}

/* This program's environment with the variables of a trajectory. The caller frees the list and its first three texts. */
static inline char **agent_environment(const Agents *x, const ServeTrajectory *y) {
    static const char *const names[] = {"OPENAI_BASE_URL=", "OPENAI_API_KEY=", "OPENAI_MODEL="};
    TextBuffer text[3] = {0};
    int n = 0, at = 3;
    while (environ[n]) n++;
    char **list = (char **)xcalloc((size_t)n + 4, sizeof *list);
    text_format(&text[0], "%shttp://%s/r/%s/v1", names[0], x->http.address, y->key);
    text_format(&text[1], "%s%s", names[1], y->key);
    text_format(&text[2], "%s" AGENT_MODEL, names[2]);
    for (int k = 0; k < 3; k++) list[k] = text[k].text;
    for (int i = 0; i < n; i++) {
        bool ours = false;
        for (int k = 0; k < 3; k++) ours = ours || !strncmp(environ[i], names[k], strlen(names[k]));
        if (!ours) list[at++] = environ[i];
    }
    return list;
}

/* Starts a program for a sample. */
static inline bool agent_start(Agents *x, AgentRun *a, const RolloutRequest *q, int32_t sample, Error *e) {
    Error inner;
    const uint64_t id = q->id + (uint64_t)sample;
    ServeTrajectory *y = serve_trajectory_open(&x->gateway, id);
    *a = (AgentRun){.q = q, .sample = sample, .trajectory = y, .started = clock_seconds(), .in = a->in, .out = a->out};
    text_clear(&a->out);
    agent_row(x, q, id, &a->in);
    char **environment = agent_environment(x, y);
    const bool ok = process_open_with(&a->process, x->o.command, environment, &inner);
    for (int k = 0; k < 3; k++) free(environment[k]);
    free(environment);
    return ok || error_set(e, "--agent-cmd '%.200s': %.200s", x->o.command, inner.text);
}

/* Writes and reads what is possible without waiting. */
static inline void agent_move(AgentRun *a) {
    char bytes[1 << 14];
    Process *p = &a->process;
    for (size_t moved; p->in || p->out;) {
        const size_t left = p->in ? a->in.length - a->sent : 0, room = p->out ? sizeof bytes : 0;
        struct pollfd files[2] = {{.fd = room ? p->out : -1, .events = POLLIN},
                                  {.fd = left ? p->in : -1, .events = POLLOUT}};
        if (p->in && !left) close(p->in), p->in = 0;
        if (poll(files, 2, 0) <= 0) return;
        switch (process_wait(p, left ? a->in.text + a->sent : NULL, left, bytes, room, clock_seconds() + 1, &moved)) {
        case PROCESS_LATE: return;
        case PROCESS_WROTE: a->sent += moved; break;
        case PROCESS_FAILED: /* it has closed a pipe, which it may */
            if (!strcmp(p->what, "input") || !strcmp(p->what, "write")) close(p->in), p->in = 0;
            else close(p->out), p->out = 0;
            break;
        case PROCESS_READ:
            text_append(&a->out, bytes, moved);
            if (a->out.length <= 2 * AGENT_OUTPUT) break;
            memmove(a->out.text, a->out.text + a->out.length - AGENT_OUTPUT, AGENT_OUTPUT);
            a->out.length = AGENT_OUTPUT;
            break;
        }
    }
}

/* Looks after a program. When it has ended, or its time is over, it is killed with all that it started. */
static inline void agent_watch(Agents *x, AgentRun *a) {
    if (!a->process.pid) return;
    agent_move(a);
    const bool ended = process_ended(&a->process, 0);
    a->late = !ended && clock_seconds() - a->started > x->o.timeout;
    if (!ended && !a->late) return;
    if (ended) agent_move(a);
    a->status = process_kill(&a->process);
    serve_trajectory_close(&x->gateway, a->trajectory);
}

/* ---- completions ----------------------------------------------------------------------------------------------- */

/* The last line of a program's output that is not empty, to be freed. */
static inline char *agent_last_line(const TextBuffer *out) {
    size_t end = out->length;
    while (end && strchr(" \t\r\n", out->text[end - 1])) end--;
    size_t first = end;
    while (first && out->text[first - 1] != '\n') first--;
    return xstrndup(out->text ? out->text + first : "", end - first);
}

/* Reads a reward: a number, if `bare`, or an object with one. Returns false if the line is neither. */
static inline bool agent_reward(const char *line, bool bare, float *reward) {
    json_t *value = json_loads(line, JSON_DECODE_ANY, NULL);
    const json_t *number = json_is_object(value) ? json_object_get(value, "reward") : bare ? value : NULL;
    *reward = json_is_number(number) ? (float)json_number_value(number) : NAN;
    json_decref(value);
    return isfinite(*reward);
}

/* Why a program has failed, "" if it has not. */
static inline void agent_failure(const Agents *x, const AgentRun *a, bool full, const Completion *c, const char *line,
                                 Error *why) {
    const bool no_reward = x->rewarded && isnan(c->trajectory->reward);
    const bool room = full && !no_reward && completion_drawn(c); /* it may end by the refusal of its last request */
    *why = (Error){0};
    if (a->late) error_set(why, "has not ended in %g seconds (--agent-timeout)", x->o.timeout);
    else if (WIFSIGNALED(a->status))
        error_set(why, "was killed by signal %d (%s)", WTERMSIG(a->status), strsignal(WTERMSIG(a->status)));
    else if (WEXITSTATUS(a->status) && !room)
        error_set(why, "ended with exit status %d%s%s", WEXITSTATUS(a->status),
                  WEXITSTATUS(a->status) == 127 ? " (command not found)" : "",
                  full ? " after there was no room for its trajectory (--max-completion-length)" : "");
    else if (!completion_drawn(c)) error_set(why, "drew no token from the model");
    else if (no_reward) error_set(why, "its last line is no reward (--reward none): '%.100s'", line);
}

/* Makes the completion of a program that has ended, whose trajectory is idle. */
static inline void agent_take(Agents *x, AgentRun *a) {
    const ServeTrajectory was = *a->trajectory;
    Completion *c = &a->q->out[a->sample];
    Error why;
    x->counts.runs++;
    x->counts.requests += was.answers;
    x->counts.branches += was.branches;
    x->counts.overridden += was.overridden;
    x->counts.seconds += clock_seconds() - a->started;
    serve_trajectory_take(a->trajectory, c);
    Trajectory *y = c->trajectory;
    char *line = agent_last_line(&a->out);
    float reward;
    if (agent_reward(line, x->rewarded, &reward)) y->reward = y->end_reward = reward;
    agent_failure(x, a, was.full, c, line, &why);
    free(line);
    y->stop = why.text[0] ? STOP_AGENT_FAILED : was.full ? STOP_MAX_TOKENS : STOP_COMPLETED;
    c->finished = !trajectory_truncated(y->stop);
    a->q = NULL;
    if (!why.text[0]) return;
    x->counts.failures++;
    x->counts.timeouts += a->late;
    error_set(&x->why, "--agent-cmd '%.200s': %.300s", x->o.command, why.text);
}

/* ---- the run --------------------------------------------------------------------------------------------------- */

/* Kills the programs that run, after an error. */
static inline void agents_kill(Agents *x) {
    for (int i = 0; i < x->workers; i++)
        if (x->run[i].q) {
            process_kill(&x->run[i].process);
            serve_trajectory_close(&x->gateway, x->run[i].trajectory);
        }
}

/* Starts programs for the next samples, and takes the completions of those that have ended. *next: the first request with a
 * sample that has not begun, *sample: that sample. Returns whether anything is left to do. */
static inline bool agents_look(Agents *x, RolloutRequest *requests, int64_t n, int64_t *next, int32_t *sample, bool *ok,
                               Error *e) {
    bool left = false;
    for (int i = 0; i < x->workers && *ok; i++) {
        AgentRun *a = &x->run[i];
        if (a->q) agent_watch(x, a);
        if (a->q && !a->process.pid && serve_trajectory_idle(&x->gateway, a->trajectory)) agent_take(x, a);
        while (*next < n && *sample >= requests[*next].samples) {
            ++*next;
            *sample = 0;
        }
        if (!a->q && *next < n) *ok = agent_start(x, a, &requests[*next], (*sample)++, e);
        left = left || a->q;
    }
    return left;
}

/* Draws the completions of n requests by programs; Rollout.run. */
static inline bool agents_run(void *context, const Sampling *s, RolloutRequest *requests, int64_t n, Error *e) {
    Agents *x = (Agents *)context;
    ServeEngine *engine = &x->engine;
    const int64_t failed = x->counts.failures, runs = x->counts.runs;
    double expired = 0;
    int64_t next = 0;
    int32_t sample = 0;
    bool ok = true;
    x->serve.standard = engine->run = *s;
    serve_engine_forget_prefixes(engine); /* the weights may have changed */
    while (agents_look(x, requests, n, &next, &sample, &ok, e) && ok) {
        const double now = clock_seconds();
        if (now - expired >= 1) {
            serve_http_expire(&x->http);
            expired = now;
        }
        pthread_mutex_lock(&engine->lock);
        if (!serve_round(engine, &ok, e)) serve_wait(engine, &engine->work, 5);
        pthread_mutex_unlock(&engine->lock);
    }
    if (!ok) agents_kill(x);
    const int64_t lost = x->counts.failures - failed, all = x->counts.runs - runs;
    return ok && (lost <= x->o.max_failures * (double)all ||
                  error_set(e, "%lld of %lld runs of a program failed (--max-agent-failures %g): %.500s",
                            (long long)lost, (long long)all, x->o.max_failures, x->why.text));
}

/* Makes an engine's rollout_run() run programs. */
static inline void agents_attach(Agents *x, Rollout *engine) {
    engine->run = agents_run;
    engine->run_context = x;
    x->engine.r.flops = engine->flops;
}

static inline void agents_close(Agents *x) {
    if (!x->run) return;
    agents_kill(x);
    if (x->engine.model) serve_end(&x->engine, "the trainer has ended");
    serve_http_close(&x->http);
    serve_gateway_close(&x->gateway);
    serve_engine_close(&x->engine);
    for (int i = 0; i < x->workers; i++) text_free(&x->run[i].in), text_free(&x->run[i].out);
    free(x->run);
    if (x->serve.has_format) tool_format_free(&x->serve.format);
    *x = (Agents){0};
}

/* Opens the server. slots: requests that are answered at once. length: maximum tokens of a trajectory. text: the model's; it and
 * the model must outlive *x, which must not move afterwards. rewarded: programs have to give rewards. */
static inline bool agents_open(Agents *x, const AgentOptions *o, const Model *m, const ModelText *text, int slots,
                               int32_t length, uint64_t seed, bool rewarded, Error *e) {
    const int most = slots < AGENT_WORKERS ? slots : AGENT_WORKERS, context = m->config.context;
    const char *format = text->present ? tool_format_of_texts(&text->chat) : NULL;
    *x = (Agents){.o = *o, .workers = o->workers ? (int)o->workers : most, .rewarded = rewarded, .seed = seed};
    x->serve = (ServeModel){.name = AGENT_MODEL,
                            .text = text,
                            .vocab = m->config.vocab,
                            .length = length < context ? length : context,
                            .standard = sampling_default(),
                            .gateway = true};
    if (x->serve.length < 2) return error_set(e, "--agent-cmd: a trajectory needs at least 2 tokens");
    x->serve.has_format = format && tool_format_open(&x->serve.format, format, e);
    if (format && !x->serve.has_format) return false;
    x->run = (AgentRun *)xcalloc((size_t)x->workers, sizeof *x->run);
    x->http = (ServeHttp){.engine = &x->engine, .gateway = &x->gateway};
    if (serve_engine_open(&x->engine, &x->serve, m, slots, INT32_MAX, seed, e)) {
        serve_gateway_open(&x->gateway, &x->engine, x->workers, length);
        if (serve_http_open(&x->http, "127.0.0.1:0", e)) return true;
    }
    agents_close(x);
    return false;
}

#endif
