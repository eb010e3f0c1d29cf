/* code_tool.h - the tools `python` and `c`: programs that the model writes, run in the sandbox while others are sampled.
 *
 * A call is a program without input. Its result is what it wrote to its standard output, then what it wrote to its standard
 * error (for C, the compiler's messages), and then, if it did not end with status 0, why:
 *
 *     Traceback (most recent call last): ...
 *     exit status 1
 *
 * As many programs run at the same time as the sandbox has workers; the others wait in the order of their calls. Each has
 * an interpreter of its own. A program that fails is the model's doing, and its result says so. A failure of the sandbox is
 * not: the call is tried once more, and then has no result.
 *
 *     CodeTool c;
 *     ToolReply reply;
 *     const CodeToolOptions o = {.sandbox = sandbox_defaults(), .timeout = 6};
 *     if (!code_tool_open(&c, &o, &e)) die("%s", e.text);
 *     code_tool_begin(&c, "python", "print(6 * 7)", NULL, 0);
 *     while (!code_tool_next(&c, &reply, &e)) code_tool_wait(&c, 0.1);
 *     puts(json_string_value(json_object_get(reply.value, "content")));        // 42
 *     json_decref(reply.value);
 *     code_tool_close(&c);
 */
#ifndef LLMC_TOOLS_CODE_TOOL_H
#define LLMC_TOOLS_CODE_TOOL_H

#include "../base/clock.h"              /* clock_seconds */
#include "../base/error.h"              /* Error, xcalloc, error_set, xrealloc, ... */
#include "../base/json_text.h"          /* json_utf8 */
#include "../base/text.h"               /* text_format, text_append, TextBuffer, text_free */
#include "../sandbox/sandbox.h"         /* SANDBOX_KEEP, Sandbox, SandboxOptions, sandbox_close, ... */
#include "../sandbox/sandbox_outcome.h" /* SANDBOX_PASS, SANDBOX_COMPILE, SANDBOX_FAILED, SANDBOX_MEMORY, ... */
#include "../sandbox/sandbox_run.h"     /* SandboxRun, sandbox_run_end, SandboxProgram, sandbox_run_begin, ... */
#include "tool_program.h"               /* ToolReply */
#include <jansson.h>
#include <poll.h>

typedef struct CodeToolOptions {
    SandboxOptions sandbox;
    double timeout; /* seconds of a program */
} CodeToolOptions;

/* A call: its program waits, or runs. */
typedef struct CodeCall {
    const char *language;
    char *source;
    void *context; /* of the caller, with a number */
    int tag;
    double begun; /* clock_seconds() */
    bool running, again;
    SandboxRun run;
} CodeCall;

typedef struct CodeTool {
    CodeToolOptions o;
    bool open;
    Sandbox sandbox;
    CodeCall **call; /* in the order in which they were begun */
    int count, room, running;
} CodeTool;

/* Removes a call and kills its program. */
static inline void code_tool_remove(CodeTool *c, int i) {
    CodeCall *call = c->call[i];
    if (call->running) sandbox_run_end(&c->sandbox, &call->run);
    c->running -= call->running;
    free(call->source);
    free(call);
    for (int k = i + 1; k < c->count; k++) c->call[k - 1] = c->call[k];
    c->count--;
}

static inline void code_tool_close(CodeTool *c) {
    c->sandbox.target = 0; /* no interpreter takes the place of one that ends */
    while (c->count) code_tool_remove(c, 0);
    free(c->call);
    if (c->open) sandbox_close(&c->sandbox);
    *c = (CodeTool){0};
}

/* Opens the sandbox. Fails if it does not hold. */
static inline bool code_tool_open(CodeTool *c, const CodeToolOptions *o, Error *e) {
    *c = (CodeTool){.o = *o};
    c->open = sandbox_open(&c->sandbox, &o->sandbox, e);
    return c->open;
}

/* Starts programs that wait, as many as may run at the same time. */
static inline void code_tool_start(CodeTool *c) {
    for (int i = 0; i < c->count && c->running < c->sandbox.o.workers; i++) {
        CodeCall *call = c->call[i];
        if (call->running) continue;
        const SandboxProgram program = {.language = call->language, .source = call->source, .seconds = c->o.timeout};
        sandbox_run_begin(&c->sandbox, &call->run, &program);
        call->running = true;
        c->running++;
    }
}

/* Begins a call. language: python or c, kept by the caller. context, tag: are in the reply. */
static inline void code_tool_begin(CodeTool *c, const char *language, const char *source, void *context, int tag) {
    if (c->count == c->room) {
        c->room = c->room ? 2 * c->room : 16;
        c->call = (CodeCall **)xrealloc(c->call, (size_t)c->room, sizeof(CodeCall *));
    }
    CodeCall *call = (CodeCall *)xcalloc(1, sizeof *call);
    *call = (CodeCall){
        .language = language, .source = xstrdup(source), .context = context, .tag = tag, .begun = clock_seconds()};
    c->call[c->count++] = call;
    code_tool_start(c);
}

/* Nobody waits for the results of these calls any more: their programs are killed. */
static inline void code_tool_forget(CodeTool *c, const void *context) {
    for (int i = c->count - 1; i >= 0; i--)
        if (c->call[i]->context == context) code_tool_remove(c, i);
    code_tool_start(c);
}

/* Writes why a program did not end with status 0. */
static inline void code_tool_end(const CodeTool *c, const SandboxRun *r, TextBuffer *out) {
    if (r->outcome != SANDBOX_PASS && out->length && out->text[out->length - 1] != '\n') text_append(out, "\n", 1);
    switch (r->outcome) {
    case SANDBOX_PASS: break;
    case SANDBOX_TIMEOUT: text_format(out, "the program did not end within %g seconds", c->o.timeout); break;
    case SANDBOX_MEMORY:
        text_format(out, "the program used more than %lld MiB of memory", (long long)c->o.sandbox.memory);
        break;
    case SANDBOX_OUTPUT_LIMIT: text_format(out, "the program wrote more than %d MiB", SANDBOX_KEEP >> 20); break;
    case SANDBOX_COMPILE: text_format(out, "the program cannot be compiled"); break;
    default:
        if (r->status < 0) text_format(out, "ended by signal %d (%s)", -r->status, strsignal(-r->status));
        else if (r->status) text_format(out, "exit status %d", r->status);
        else text_format(out, "the program ended without a status");
    }
}

/* What the caller gets of a run that is over. */
static inline json_t *code_tool_result(const CodeTool *c, const SandboxRun *r) {
    TextBuffer text = {0};
    text_append(&text, r->output.text, r->output.length);
    if (text.length && r->errors.length && text.text[text.length - 1] != '\n') text_append(&text, "\n", 1);
    text_append(&text, r->errors.text, r->errors.length);
    code_tool_end(c, r, &text);
    json_t *value =
        json_pack("{s:o,s:b}", "content", json_utf8(text.text, text.length), "error", r->outcome != SANDBOX_PASS);
    text_free(&text);
    return value;
}

/* Sets *reply to the result of a call whose program has ended, and returns true. If the sandbox failed twice, the reply has
 * no value, and *e says why. Never waits. */
static inline bool code_tool_next(CodeTool *c, ToolReply *reply, Error *e) {
    for (int i = 0; i < c->count; i++) {
        CodeCall *call = c->call[i];
        if (!call->running || !sandbox_run_step(&call->run)) continue;
        const bool failed = call->run.outcome == SANDBOX_FAILED;
        if (failed && !call->again) {
            sandbox_run_end(&c->sandbox, &call->run);
            call->running = false;
            call->again = true;
            c->running--;
            code_tool_start(c);
            continue;
        }
        if (failed) error_set(e, "sandbox: %s: %.400s", sandbox_name(&c->sandbox), call->run.failure.text);
        *reply = (ToolReply){.context = call->context,
                             .tag = call->tag,
                             .value = failed ? NULL : code_tool_result(c, &call->run),
                             .seconds = clock_seconds() - call->begun};
        code_tool_remove(c, i);
        code_tool_start(c);
        return true;
    }
    return false;
}

/* Waits until a program has written something or ended, at most this many seconds. */
static inline void code_tool_wait(const CodeTool *c, double seconds) {
    struct pollfd *files = (struct pollfd *)xcalloc(3 * (size_t)c->count + 1, sizeof *files);
    nfds_t n = 0;
    for (int i = 0; i < c->count; i++) {
        if (!c->call[i]->running) continue;
        sandbox_run_files(&c->call[i]->run, files + n);
        n += 3;
    }
    poll(files, n, (int)(1e3 * seconds));
    free(files);
}

#endif
