/* tool_program.h - programs on pipes that give tools, episodes and turns of a game, in any language (--tool-cmd).
 *
 * A program is started as several workers by `sh -c`, and runs as long as the trainer. It reads one JSON object a line on
 * its standard input and answers each by one line on its standard output; it may answer in any order. Requests are told
 * apart by "op", "id", "turn" and "call", which the answer repeats:
 *
 *     -> {"op":"hello","version":1,"program":"train_grpo","worker":0,"workers":2,"seed":1}
 *     <- {"op":"hello","tools":[SCHEMA,...],"episodes":true,"text":false,"group":false,"opening":false}
 *     -> {"op":"reset","id":"12.3","samples":8,"prompt":"...","answer":"...","task":"...","fields":{},"seed":98765}
 *     <- {"op":"reset","id":"12.3","role":"first","episode":"1","observation":null,"tools":null}
 *     -> {"op":"call","id":"12.3","turn":0,"call":0,"name":"lookup","arguments":{"key":"k7"}}
 *     <- {"op":"call","id":"12.3","turn":0,"call":0,"content":"v19","reward":0,"done":false}
 *     -> {"op":"step","id":"12.3","turn":0,"text":"16"}
 *     <- {"op":"step","id":"12.3","turn":0,"observation":"lower","role":"user","reward":0,"done":false}
 *     -> {"op":"end","id":"12.3","reason":"completed","turns":3,"messages":[...]}
 *     <- {"op":"end","id":"12.3","reward":1.0}
 *
 * This header moves lines and keeps time; rollout/episodes.h gives them meaning. A sample stays with one worker.
 *
 * A worker that ends, does not answer in time, or writes what is not the answer to a request is killed and started anew.
 * Requests to a program without episodes are then sent again, up to `retries` times; all others fail. A worker that fails
 * before its hello, or whose hello differs from the first, ends the run: the functions return an Error.
 *
 *     ToolPrograms p;
 *     ToolReply reply;
 *     const ToolProgramOptions o = {.workers = 1, .timeout = 30, .start_timeout = 30, .retries = 2, .line_max = 1 << 20};
 *     const char *const commands[] = {"python3 tools.py"};
 *     if (!tool_programs_open(&p, commands, 1, &o, "train_grpo", 1, &e)) die("%s", e.text);
 *     tool_programs_send(&p, 0, 0, json_pack("{s:s,s:s,s:i,s:i,s:s,s:{}}", "op", "call", "id", "0.0", "turn", 0, "call", 0,
 *                                            "name", "lookup", "arguments"), NULL, 0);
 *     if (tool_programs_next(&p, true, &reply, &e) < 0) die("%s", e.text);
 *     json_decref(reply.value);
 *     tool_programs_close(&p);
 */
#ifndef LLMC_TOOLS_TOOL_PROGRAM_H
#define LLMC_TOOLS_TOOL_PROGRAM_H

#include "../base/clock.h"   /* clock_seconds */
#include "../base/error.h"   /* Error, error_set, checked_object, xcalloc, ... */
#include "../base/process.h" /* PROCESS_FAILED, PROCESS_LATE, PROCESS_READ, PROCESS_WROTE, ... */
#include "../base/text.h"    /* text_free, TextBuffer, text_string, text_append, ... */
#include <jansson.h>
#include <math.h>

enum { TOOL_PROGRAMS_MAX = 8 };

typedef struct ToolProgramOptions {
    int workers;                   /* of each program */
    double timeout, start_timeout; /* seconds for an answer; for the hello */
    int retries;
    int64_t line_max; /* bytes of a line */
} ToolProgramOptions;

typedef struct ToolWorker {
    Process process;
    TextBuffer out, in; /* bytes to be written, of which `sent` are; bytes that were read and are no line yet */
    size_t sent;
    int life; /* how often it was started */
} ToolWorker;

typedef struct ToolProgram {
    char *command;
    ToolWorker *worker; /* (workers) */
    json_t *hello;
    bool episodes, text;
    bool group;   /* episodes of one prompt may wait for one another */
    bool opening; /* its answer to a reset is waited for before the model's first turn */
} ToolProgram;

/* A request without an answer yet. */
typedef struct ToolPending {
    int program, worker, tag;
    void *context; /* NULL: nobody waits for it */
    json_t *request;
    double sent;
    int tries;
    bool failed;
} ToolPending;

typedef struct ToolReply {
    void *context;
    int tag;
    json_t *value; /* the answer, to be freed by the caller; NULL: the program failed */
    double seconds;
} ToolReply;

typedef struct ToolPrograms {
    ToolProgramOptions o;
    const char *name; /* of the trainer */
    int64_t seed;
    ToolProgram program[TOOL_PROGRAMS_MAX];
    int count;
    ToolPending *pending;
    int pending_count, pending_room;
    int64_t restarts;
    Error why; /* of the last failure */
    /* Of a program with `group`: the time from which it owes the answer to a request of this context, INFINITY as long as it
     * may wait for another episode. NULL: from when the request was sent. */
    double (*owes)(const void *context);
} ToolPrograms;

static inline void tool_worker_stop(ToolWorker *w, bool at_once) {
    if (at_once) process_kill(&w->process);
    else process_close(&w->process);
    text_free(&w->in), text_free(&w->out);
    w->sent = 0;
}

static inline void tool_programs_close(ToolPrograms *p) {
    for (int i = 0; i < p->count; i++) {
        for (int k = 0; k < p->o.workers; k++) tool_worker_stop(&p->program[i].worker[k], false);
        free(p->program[i].worker), free(p->program[i].command);
        json_decref(p->program[i].hello);
    }
    for (int i = 0; i < p->pending_count; i++) json_decref(p->pending[i].request);
    free(p->pending);
    *p = (ToolPrograms){0};
}

/* ---- lines ----------------------------------------------------------------------------------------------------- */

/* Appends a request to a worker's lines. */
static inline void tool_worker_line(ToolWorker *w, const json_t *request) {
    char *text = (char *)checked_object(json_dumps(request, JSON_COMPACT), "a line for a tool's program");
    text_string(&w->out, text);
    text_string(&w->out, "\n");
    free(text);
}

/* Sets *e to the reason why a worker failed, with the end of what it wrote. */
static inline bool tool_worker_error(const ToolPrograms *p, int program, int worker, const char *why, Error *e) {
    const ToolWorker *w = &p->program[program].worker[worker];
    const size_t n = w->in.length, from = n > 200 ? n - 200 : 0;
    TextBuffer tail = {0};
    if (n) utf8_clean(&tail, w->in.text + from, n - from);
    error_set(e, "tool program '%.200s', worker %d: %s%s%s%s", p->program[program].command, worker, why,
              tail.length ? "; its last output: '" : "", tail.length ? tail.text : "", tail.length ? "'" : "");
    text_free(&tail);
    return false;
}

/* Writes and reads what is possible without waiting. Returns false with the reason in *why if the worker failed. */
static inline bool tool_worker_move(const ToolPrograms *p, ToolWorker *w, char *why, size_t size) {
    char bytes[1 << 16];
    Error e;
    for (;;) {
        const size_t left = w->out.length - w->sent;
        size_t moved;
        struct pollfd files[2] = {{.fd = w->process.out, .events = POLLIN},
                                  {.fd = left ? w->process.in : -1, .events = POLLOUT}};
        if (poll(files, 2, 0) <= 0) return true;
        switch (process_wait(&w->process, left ? w->out.text + w->sent : NULL, left, bytes, sizeof bytes,
                             clock_seconds() + 1, &moved)) {
        case PROCESS_LATE: return true;
        case PROCESS_FAILED:
            process_failed(&w->process, "between two answers", &e);
            snprintf(why, size, "%.300s", e.text);
            return false;
        case PROCESS_WROTE:
            w->sent += moved;
            if (w->sent < w->out.length) break;
            text_clear(&w->out);
            w->sent = 0;
            break;
        case PROCESS_READ:
            text_append(&w->in, bytes, moved);
            if (memchr(bytes, '\n', moved)) return true;
            if ((int64_t)w->in.length <= p->o.line_max) break;
            snprintf(why, size, "wrote a line of more than %lld bytes", (long long)p->o.line_max);
            return false;
        }
    }
}

/* Takes the next line that a worker has written: 1 with the object in *value, 0: there is none, -1: it is no object. */
static inline int tool_worker_take(const ToolPrograms *p, ToolWorker *w, json_t **value, char *why, size_t size) {
    char *end = w->in.length ? (char *)memchr(w->in.text, '\n', w->in.length) : NULL;
    if (!end) return 0;
    const size_t n = (size_t)(end - w->in.text);
    json_error_t error;
    *value = (int64_t)n > p->o.line_max ? NULL : json_loadb(w->in.text, n, JSON_ALLOW_NUL, &error);
    if (!json_is_object(*value)) {
        json_decref(*value);
        if ((int64_t)n > p->o.line_max)
            snprintf(why, size, "wrote a line of more than %lld bytes", (long long)p->o.line_max);
        else snprintf(why, size, "wrote a line that is not a JSON object");
        return -1;
    }
    memmove(w->in.text, end + 1, w->in.length - n - 1);
    w->in.length -= n + 1;
    return 1;
}

/* ---- starting -------------------------------------------------------------------------------------------------- */

/* Starts a worker and waits for its hello, which must be that of the program's first one. */
static inline bool tool_worker_start(ToolPrograms *p, int program, int worker, Error *e) {
    ToolProgram *g = &p->program[program];
    ToolWorker *w = &g->worker[worker];
    Error inner;
    char why[400];
    const double until = clock_seconds() + p->o.start_timeout;
    if (!process_open(&w->process, g->command, &inner)) return tool_worker_error(p, program, worker, inner.text, e);
    w->life++;
    json_t *hello = json_pack("{s:s,s:i,s:s,s:i,s:i,s:I}", "op", "hello", "version", 1, "program", p->name, "worker",
                              worker, "workers", p->o.workers, "seed", (json_int_t)p->seed);
    tool_worker_line(w, hello);
    json_decref(hello);
    for (int got = 0; !got;) {
        json_t *value;
        if (!tool_worker_move(p, w, why, sizeof why)) return tool_worker_error(p, program, worker, why, e);
        got = tool_worker_take(p, w, &value, why, sizeof why);
        if (got < 0) return tool_worker_error(p, program, worker, why, e);
        if (got) {
            const char *op = json_string_value(json_object_get(value, "op"));
            const bool greeted = op && !strcmp(op, "hello"), same = !g->hello || json_equal(g->hello, value);
            if (!g->hello && greeted) g->hello = json_incref(value);
            json_decref(value);
            if (!greeted)
                return tool_worker_error(p, program, worker, "its first line is no {\"op\":\"hello\",...}", e);
            if (!same)
                return tool_worker_error(p, program, worker, "its hello differs from that of the first worker", e);
        } else if (clock_seconds() > until) {
            snprintf(why, sizeof why, "no hello in %g seconds", p->o.start_timeout);
            return tool_worker_error(p, program, worker, why, e);
        } else {
            const struct timespec pause = {0, 1000000};
            nanosleep(&pause, NULL);
        }
    }
    return true;
}

/* Starts the workers of the commands. name: of the trainer. seed: of the run. */
static inline bool tool_programs_open(ToolPrograms *p, const char *const *commands, int count,
                                      const ToolProgramOptions *o, const char *name, int64_t seed, Error *e) {
    *p = (ToolPrograms){.o = *o, .name = name, .seed = seed};
    if (count > TOOL_PROGRAMS_MAX) return error_set(e, "more than %d programs", TOOL_PROGRAMS_MAX);
    bool ok = true;
    for (int i = 0; i < count && ok; i++) {
        ToolProgram *g = &p->program[p->count++];
        g->command = xstrdup(commands[i]);
        g->worker = (ToolWorker *)xcalloc((size_t)o->workers, sizeof *g->worker);
        for (int k = 0; k < o->workers && ok; k++) ok = tool_worker_start(p, i, k, e);
        g->episodes = json_is_true(json_object_get(g->hello, "episodes"));
        g->text = json_is_true(json_object_get(g->hello, "text"));
        g->group = g->episodes && json_is_true(json_object_get(g->hello, "group"));
        g->opening = g->episodes && json_is_true(json_object_get(g->hello, "opening"));
    }
    if (!ok) tool_programs_close(p);
    return ok;
}

/* ---- requests -------------------------------------------------------------------------------------------------- */

/* Sends a request, whose reference is taken, to a worker. */
static inline void tool_programs_send(ToolPrograms *p, int program, int worker, json_t *request, void *context,
                                      int tag) {
    if (p->pending_count == p->pending_room) {
        p->pending_room = p->pending_room ? 2 * p->pending_room : 64;
        p->pending = (ToolPending *)xrealloc(p->pending, (size_t)p->pending_room, sizeof *p->pending);
    }
    p->pending[p->pending_count++] = (ToolPending){.program = program,
                                                   .worker = worker,
                                                   .tag = tag,
                                                   .context = context,
                                                   .request = request,
                                                   .sent = clock_seconds()};
    tool_worker_line(&p->program[program].worker[worker], request);
}

/* Nobody waits for the answers to these requests any more. */
static inline void tool_programs_forget(ToolPrograms *p, const void *context) {
    for (int i = 0; i < p->pending_count; i++)
        if (p->pending[i].context == context) p->pending[i].context = NULL;
}

/* Whether a value is the answer to a request. */
static inline bool tool_answers(const json_t *value, const json_t *request) {
    static const char *const keys[] = {"op", "id", "turn", "call"};
    for (int i = 0; i < 4; i++) {
        const json_t *wanted = json_object_get(request, keys[i]);
        if (wanted && !json_equal(wanted, json_object_get(value, keys[i]))) return false;
    }
    return true;
}

/* A worker failed: it is started anew, and its requests are sent again or fail. */
static inline bool tool_worker_failed(ToolPrograms *p, int program, int worker, const char *why, Error *e) {
    ToolProgram *g = &p->program[program];
    ToolWorker *w = &g->worker[worker];
    tool_worker_error(p, program, worker, why, &p->why);
    p->restarts++;
    tool_worker_stop(w, true);
    if (!tool_worker_start(p, program, worker, e)) return false;
    for (int i = 0; i < p->pending_count; i++) {
        ToolPending *q = &p->pending[i];
        if (q->program != program || q->worker != worker || q->failed) continue;
        if (g->episodes || q->tries >= p->o.retries) q->failed = true;
        else {
            q->tries++;
            q->sent = clock_seconds();
            tool_worker_line(w, q->request);
        }
    }
    return true;
}

/* Removes a request and returns what its sender gets. */
static inline ToolReply tool_pending_done(ToolPrograms *p, int i, json_t *value) {
    const ToolPending q = p->pending[i];
    json_decref(q.request);
    for (int k = i + 1; k < p->pending_count; k++) p->pending[k - 1] = p->pending[k];
    p->pending_count--;
    return (ToolReply){.context = q.context, .tag = q.tag, .value = value, .seconds = clock_seconds() - q.sent};
}

/* Whether the answer to a request is late. */
static inline bool tool_pending_late(const ToolPrograms *p, const ToolPending *q) {
    const bool waits = p->owes && q->context && p->program[q->program].group;
    return clock_seconds() - fmax(q->sent, waits ? p->owes(q->context) : 0) > p->o.timeout;
}

/* Looks once for an answer, as tool_programs_next(). */
static inline int tool_programs_look(ToolPrograms *p, ToolReply *reply, Error *e) {
    char why[400];
    json_t *value;
    for (int i = 0; i < p->pending_count; i++)
        if (p->pending[i].failed) {
            *reply = tool_pending_done(p, i, NULL);
            return 1;
        }
    for (int g = 0; g < p->count; g++)
        for (int k = 0; k < p->o.workers; k++) {
            ToolWorker *w = &p->program[g].worker[k];
            int got = tool_worker_take(p, w, &value, why, sizeof why);
            if (!got && !tool_worker_move(p, w, why, sizeof why)) got = -1;
            if (!got) got = tool_worker_take(p, w, &value, why, sizeof why);
            int i = 0;
            if (got > 0) {
                while (i < p->pending_count && (p->pending[i].program != g || p->pending[i].worker != k ||
                                                p->pending[i].failed || !tool_answers(value, p->pending[i].request)))
                    i++;
                if (i < p->pending_count) {
                    *reply = tool_pending_done(p, i, value);
                    return 1;
                }
                char *text = json_dumps(value, JSON_COMPACT);
                snprintf(why, sizeof why, "wrote '%.150s', which answers no request", text);
                free(text);
                json_decref(value);
                got = -1;
            }
            for (i = 0; !got && i < p->pending_count; i++) {
                const ToolPending *q = &p->pending[i];
                if (q->program != g || q->worker != k || q->failed || !tool_pending_late(p, q)) continue;
                snprintf(why, sizeof why, "no answer in %g seconds", p->o.timeout);
                got = -1;
            }
            if (got < 0) return tool_worker_failed(p, g, k, why, e) ? 2 : -1;
        }
    return 0;
}

/* Waits until a worker has written something or accepts input, at most 20 ms. */
static inline void tool_programs_wait(const ToolPrograms *p) {
    struct pollfd files[2 * 64];
    nfds_t n = 0;
    for (int g = 0; g < p->count; g++)
        for (int k = 0; k < p->o.workers && n + 2 <= 2 * 64; k++) {
            const ToolWorker *w = &p->program[g].worker[k];
            files[n++] = (struct pollfd){.fd = w->process.out, .events = POLLIN};
            if (w->out.length > w->sent) files[n++] = (struct pollfd){.fd = w->process.in, .events = POLLOUT};
        }
    poll(files, n, 20);
}

/* Sets *reply to an answer and returns 1; returns 0 if there is none, after waiting for one if `wait` is set and requests
 * have no answer yet; -1: a program cannot be started again. */
static inline int tool_programs_next(ToolPrograms *p, bool wait, ToolReply *reply, Error *e) {
    while (p->pending_count) {
        const int got = tool_programs_look(p, reply, e);
        if (got < 0) return -1;
        if (got == 2) continue; /* a worker was started anew */
        if (got == 1 && reply->context) return 1;
        if (got == 1) json_decref(reply->value);
        if (got == 1) continue;
        if (!wait) return 0;
        tool_programs_wait(p);
    }
    return 0;
}

#endif
