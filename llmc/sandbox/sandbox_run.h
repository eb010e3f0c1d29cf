/* sandbox_run.h - one program with its input in the sandbox: what it wrote and how it ended. Many run at the same time.
 *
 *     Sandbox s;
 *     SandboxRun run;
 *     const SandboxProgram program = {.language = "python", .source = "print(6 * 7)", .seconds = 10};
 *     sandbox_run_begin(&s, &run, &program);
 *     while (!sandbox_run_step(&run)) sandbox_wait(&run.session, 0.1);      // or poll() on sandbox_run_files() of several
 *     printf("%s: %.*s", sandbox_outcome_name(run.outcome), (int)run.output.length, run.output.text);      // pass: 42
 *     sandbox_run_end(&s, &run);
 *
 * Outcomes: SANDBOX_PASS if the program ended with status 0; the others say why it did not, and SANDBOX_FAILED is a failure
 * of the sandbox and not of the program.
 */
#ifndef LLMC_SANDBOX_SANDBOX_RUN_H
#define LLMC_SANDBOX_SANDBOX_RUN_H

#include "../base/clock.h"     /* clock_seconds */
#include "../base/error.h"     /* Error, xstrdup */
#include "../base/json_text.h" /* json_utf8 */
#include "../base/text.h"      /* text_clear, TextSlice, text_append, text_free, ... */
#include "sandbox.h"           /* Sandbox, SandboxSession, SANDBOX_BROKEN, SANDBOX_COMPILES, ... */
#include "sandbox_outcome.h"   /* SandboxOutcome, SANDBOX_ERROR, SANDBOX_TIMEOUT, SANDBOX_MEMORY, ... */
#include "sandbox_process.h"   /* sandbox_process_files */

typedef struct SandboxProgram {
    const char *language; /* python, c, or command: `source` is a shell command */
    const char *source, *input;
    json_t *files;  /* {name: text} that it finds in its folder, or NULL */
    double seconds; /* of wall-clock time; compiling C has ten seconds more */
} SandboxProgram;

typedef struct SandboxRun {
    SandboxSession session;
    char *input;
    double seconds, begin;
    bool ready; /* the program can run: it is compiled */
    /* results, once sandbox_run_step() has returned true */
    SandboxOutcome outcome;
    int status;                /* exit status, or minus the signal that ended it; 0 if it did not end by itself */
    TextBuffer output, errors; /* at most SANDBOX_KEEP bytes each; a compiler's messages are errors */
    double elapsed;            /* seconds */
    Error failure;             /* of SANDBOX_FAILED */
} SandboxRun;

/* The outcome that a message of the runner names, or SANDBOX_OUTCOMES if it names none. A program may have changed the
 * runner: a name that is not its to give counts as an error. */
static inline SandboxOutcome sandbox_outcome(const json_t *reply) {
    const char *name = json_string_value(json_object_get(reply, "outcome"));
    if (!name) return SANDBOX_OUTCOMES;
    for (int i = SANDBOX_WRONG; i <= SANDBOX_OUTPUT_LIMIT; i++)
        if (!strcmp(name, sandbox_outcome_name((SandboxOutcome)i))) return (SandboxOutcome)i;
    return SANDBOX_ERROR;
}

/* The outcome of a program that ended: by an exit status, or by a signal. errors: what it wrote to standard error, whose
 * last line names Python's exception. */
static inline SandboxOutcome sandbox_outcome_of_end(const json_t *reply, TextSlice errors, int *status) {
    const int number = (int)json_integer_value(json_object_get(reply, "signal"));
    *status = number ? -number : (int)json_integer_value(json_object_get(reply, "status"));
    if (number == SIGXCPU) return SANDBOX_TIMEOUT;
    if (number == SIGKILL) return SANDBOX_MEMORY;
    if (!number && json_is_integer(json_object_get(reply, "status")) && *status == 0) return SANDBOX_PASS;
    size_t n = errors.length;
    while (n && errors.text[n - 1] == '\n') n--;
    const char *line = n ? (const char *)memrchr(errors.text, '\n', n) : NULL;
    const size_t from = line ? (size_t)(line - errors.text) + 1 : 0;
    return n - from >= 11 && !memcmp(errors.text + from, "MemoryError", 11) ? SANDBOX_MEMORY : SANDBOX_ERROR;
}

/* Begins to run a program; never waits. */
static inline void sandbox_run_begin(Sandbox *s, SandboxRun *r, const SandboxProgram *p) {
    const bool command = !strcmp(p->language, "command"), c = !strcmp(p->language, "c");
    *r = (SandboxRun){.input = xstrdup(p->input ? p->input : ""), .seconds = p->seconds};
    json_t *request = json_pack("{s:s,s:s}", "mode", "program", "language", p->language);
    json_object_set_new(request, command ? "run" : "source", json_utf8(p->source, strlen(p->source)));
    if (p->files) json_object_set(request, "files", p->files);
    text_clear(&r->output), text_clear(&r->errors);
    sandbox_begin(s, &r->session, request, p->seconds + (c ? SANDBOX_COMPILES : 0));
    json_decref(request);
}

/* Keeps the output and the errors that came with a message. */
static inline void sandbox_run_keep(SandboxRun *r) {
    text_clear(&r->output), text_clear(&r->errors);
    text_append(&r->output, r->session.blocks[0].text, r->session.blocks[0].length);
    text_append(&r->errors, r->session.blocks[1].text, r->session.blocks[1].length);
}

static inline bool sandbox_run_finish(SandboxRun *r, SandboxOutcome outcome) {
    r->outcome = outcome;
    r->elapsed = r->session.started ? clock_seconds() - r->session.begin : 0;
    return true;
}

/* Goes on as far as it can without waiting. Returns whether the run is over. */
static inline bool sandbox_run_step(SandboxRun *r) {
    SandboxSession *x = &r->session;
    for (;;) {
        switch (sandbox_serve(x)) {
        case SANDBOX_WAIT:
            if (r->ready && clock_seconds() > r->begin + r->seconds) return sandbox_run_finish(r, SANDBOX_TIMEOUT);
            return false;
        case SANDBOX_LATE: return sandbox_run_finish(r, r->ready ? SANDBOX_TIMEOUT : SANDBOX_COMPILE);
        case SANDBOX_FLOOD: return sandbox_run_finish(r, SANDBOX_OUTPUT_LIMIT);
        case SANDBOX_ENDED: return sandbox_run_finish(r, SANDBOX_ERROR);
        case SANDBOX_BROKEN: r->failure = x->failure; return sandbox_run_finish(r, SANDBOX_FAILED);
        case SANDBOX_REPLY: break;
        }
        const char *outcome = json_string_value(json_object_get(x->reply, "outcome"));
        if (r->ready || !outcome || strcmp(outcome, "ready")) break;
        r->ready = true;
        r->begin = clock_seconds();
        sandbox_send(x, json_pack("{s:o}", "input", json_utf8(r->input, strlen(r->input))));
    }
    sandbox_run_keep(r);
    const SandboxOutcome named = sandbox_outcome(x->reply);
    const TextSlice errors = {r->errors.text, r->errors.length};
    if (named != SANDBOX_OUTCOMES) return sandbox_run_finish(r, named);
    return sandbox_run_finish(r, sandbox_outcome_of_end(x->reply, errors, &r->status));
}

/* The files to wait for with poll(). */
static inline void sandbox_run_files(const SandboxRun *r, struct pollfd files[3]) {
    sandbox_process_files(&r->session.worker.process, files);
}

/* Frees the results and kills what still runs. */
static inline void sandbox_run_end(Sandbox *s, SandboxRun *r) {
    sandbox_end(s, &r->session);
    text_free(&r->output), text_free(&r->errors);
    free(r->input);
    r->input = NULL;
}

#endif
