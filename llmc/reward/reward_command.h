/* reward_command.h - rewards computed by a user's program, in any language.
 *
 * The program is started once by `sh -c`, or as several workers, and runs as long as the trainer. For every completion it
 * reads one line of JSON on its standard input and must write one line on its standard output, in the same order: a finite
 * number, or null / none / nan if it cannot score the completion. Its standard error is the trainer's.
 *
 *     {"prompt":"12+34=","completion":"46","answer":"46","task":"add","level":2}      ->      1.0
 *
 * "prompt", "completion", "answer" and "task" are always present; the record's other fields follow, among them
 * "messages" if the record has the messages of which "prompt" is the rendered text. For a completion of several turns,
 * "completion" is the last one, "messages" has all turns, calls and results, "unread" says how many of the last results the
 * model has not observed, and "stop" why it ended. Bytes that are not valid UTF-8 are replaced by U+FFFD. The program must
 * flush its output (python: print(..., flush=True)) and should exit at the end of its input.
 *
 *     import json, sys
 *     for line in sys.stdin:
 *         r = json.loads(line)
 *         print(float(r["answer"] in r["completion"]), flush=True)
 *
 * With `groups`, a line has all completions to a prompt, {"group":[{...},{...}]}, and the answer is a list of as many numbers
 * or nulls, [1, 0.5]: for rewards that compare them.
 *
 * Several workers get the lines in turn: line k goes to worker k mod workers. What a program answers must not depend on the
 * lines before.
 *
 * The program may answer line by line, in blocks, or after reading all its input (../base/process.h). If it ends (exit
 * status or signal), exceeds the timeout of a batch, or writes a line that is not a number or too many lines, it is
 * killed and the call fails with an Error. Closing ends its input, and processes of its group that still run half a
 * second later are killed. The terminal's Ctrl-C does not reach it, so a trainer can finish its step.
 *
 * With a sandbox (../sandbox/sandbox.h) the program, which reads what a model wrote and may even run it, can read only /usr and
 * the current folder, write only to /tmp, and reach no network.
 */
#ifndef LLMC_REWARD_REWARD_COMMAND_H
#define LLMC_REWARD_REWARD_COMMAND_H

#include "../base/clock.h"      /* clock_seconds */
#include "../base/error.h"      /* Error, error_set, xcalloc, xrealloc, ... */
#include "../base/json_text.h"  /* json_utf8 */
#include "../base/process.h"    /* PROCESS_FAILED, PROCESS_LATE, PROCESS_READ, PROCESS_WROTE, ... */
#include "../base/text.h"       /* TextBuffer, text_append, text_free */
#include "../sandbox/sandbox.h" /* sandbox_ending, Sandbox, SandboxWorker, sandbox_start, ... */
#include "verify_answer.h"      /* RewardInput, verify_span, verify_space, VerifySpan, ... */

enum { REWARD_LINE_MAX = 4096 }; /* bytes of an answer line; of a group: 64 times as many */

/* A copy of the program. */
typedef struct RewardWorker {
    Process process;
    SandboxWorker box; /* if it runs in a sandbox */
    char *line;        /* the JSON line being sent, or NULL */
    size_t length, sent;
    TextBuffer answer;        /* output not yet parsed */
    int lines, written, read; /* of the batch: its lines, those that it was given, and its answers */
} RewardWorker;

typedef struct RewardCommand {
    const char *program;
    double timeout;   /* seconds per batch */
    bool groups;      /* a line has all completions of a group */
    Sandbox *sandbox; /* in which it runs; NULL: in none */
    RewardWorker *worker;
    int workers;
} RewardCommand;

/* What is scored at once: line k is of completions [first[k], first[k+1]); worker w has lines w, w + workers, ... */
typedef struct RewardBatch {
    const RewardInput *in;
    const int *first;
    int lines;
    float *scores;
    int stride;
} RewardBatch;

/* Ends the program: closes its input, waits up to half a second, then kills its process group. */
static inline void reward_command_close(RewardCommand *c) {
    for (int i = 0; i < c->workers; i++) { /* all inputs first, so that the workers end together */
        RewardWorker *w = &c->worker[i];
        if (w->process.in) close(w->process.in);
        w->process.in = 0;
    }
    for (int i = 0; i < c->workers; i++) {
        if (c->sandbox) sandbox_ending(c->sandbox, &c->worker[i].process);
        process_close(&c->worker[i].process);
        sandbox_stop(&c->worker[i].box);
        free(c->worker[i].line);
        text_free(&c->worker[i].answer);
    }
    free(c->worker);
    c->worker = NULL;
    c->workers = 0;
}

/* Starts another copy of the program. */
static inline bool reward_command_worker(RewardCommand *c, Error *e) {
    Error why;
    c->worker = (RewardWorker *)xrealloc(c->worker, (size_t)c->workers + 1, sizeof *c->worker);
    RewardWorker *w = &c->worker[c->workers];
    *w = (RewardWorker){0};
    if (c->sandbox ? sandbox_start(c->sandbox, c->program, &w->box, &w->process, &why)
                   : process_open(&w->process, c->program, &why)) {
        c->workers++;
        return true;
    }
    reward_command_close(c);
    return error_set(e, "reward command '%.300s': %s", c->program, why.text);
}

/* Starts `program`; `timeout` > 0 is the maximum time of a batch in seconds. sandbox: of sandbox_open_here(), or NULL. */
static inline bool reward_command_open(RewardCommand *c, const char *program, double timeout, Sandbox *sandbox,
                                       Error *e) {
    *c = (RewardCommand){.program = program, .timeout = timeout, .sandbox = sandbox};
    return reward_command_worker(c, e);
}

/* Kills the program and sets the error to the formatted reason. */
PRINTF_LIKE(3, 4)
static inline bool reward_command_fail(RewardCommand *c, Error *e, const char *format, ...) {
    char what[600];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    for (int i = 0; i < c->workers; i++) {
        if (c->sandbox) sandbox_ending(c->sandbox, &c->worker[i].process);
        process_kill(&c->worker[i].process);
        free(c->worker[i].line);
        c->worker[i].line = NULL;
    }
    return error_set(e, "reward command '%.300s': %s", c->program, what);
}

/* Adds a text to the line, with U+FFFD for every byte that belongs to no character. */
static inline void reward_command_text(json_t *line, const char *key, VerifySpan text) {
    json_object_set_new(line, key, json_utf8(text.s, text.n));
}

/* Adds the messages of a completion of several turns, after those of the prompt, how many of its last results the model has not
 * observed, and why it ended. */
static inline void reward_command_turns(json_t *line, const RewardInput *in) {
    const json_t *given = json_object_get(line, "messages");
    json_t *messages = json_is_array(given) ? json_copy((json_t *)given) : json_array();
    if (!json_is_array(given))
        json_array_append_new(messages,
                              json_pack("{s:s,s:O}", "role", "user", "content", json_object_get(line, "prompt")));
    json_array_extend(messages, (json_t *)in->messages);
    json_object_set_new(line, "messages", messages);
    json_object_set_new(line, "unread", json_integer(in->unread));
    json_object_set_new(line, "stop", json_string(in->stop));
}

/* A completion as a JSON object. */
static inline json_t *reward_command_object(const RewardInput *in) {
    json_t *line = json_object(), *fields = verify_fields(in);
    reward_command_text(line, "prompt", verify_span(in->prompt));
    reward_command_text(line, "completion", verify_completion(in));
    reward_command_text(line, "answer", verify_span(in->answer));
    reward_command_text(line, "task", verify_span(in->task));
    json_object_update_missing(line, fields);
    if (in->messages) reward_command_turns(line, in);
    json_decref(fields);
    return line;
}

/* A JSON value as a line with its newline, allocated with malloc(). Takes the reference. */
static inline char *reward_command_dump(json_t *value, size_t *length) {
    char *text = (char *)checked_object(json_dumps(value, JSON_COMPACT), "a line for the reward command");
    json_decref(value);
    *length = strlen(text);
    text = (char *)xrealloc(text, *length + 2, 1);
    text[(*length)++] = '\n';
    text[*length] = 0;
    return text;
}

/* The JSON line of one completion, with its newline; allocated with malloc(). */
static inline char *reward_command_line(const RewardInput *in, size_t *length) {
    return reward_command_dump(reward_command_object(in), length);
}

/* The JSON line of the n completions of a group. */
static inline char *reward_command_group(const RewardInput *in, int n, size_t *length) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, reward_command_object(&in[i]));
    return reward_command_dump(json_pack("{s:o}", "group", list), length);
}

/* Parses one answer line (without its newline): a finite decimal number, or null / none / nan for NaN. The text is
 * followed by a NUL. */
static inline bool reward_parse(const char *text, size_t n, float *score) {
    char *end;
    for (; n && verify_space(*text); n--) text++;
    while (n && verify_space(text[n - 1])) n--;
    if ((n == 4 && (!strncasecmp(text, "null", n) || !strncasecmp(text, "none", n))) ||
        (n == 3 && !strncasecmp(text, "nan", n))) {
        *score = NAN;
        return true;
    }
    for (size_t i = 0; i < n; i++) /* no hexadecimal number, no NUL */
        if (!verify_digit(text[i]) && (!text[i] || !strchr("+-.eE", text[i]))) return false;
    const double value = strtod(text, &end);
    *score = (float)value;
    return n && end == text + n && isfinite(*score);
}

/* Parses the answer to a group of n completions: a list of n numbers or nulls. The text is followed by a NUL. */
static inline bool reward_parse_group(const char *text, size_t length, int n, float *scores, int stride) {
    json_t *list = json_loadb(text, length, 0, NULL);
    bool good = json_array_size(list) == (size_t)n;
    for (int i = 0; good && i < n; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        const double score = json_number_value(value);
        good = json_is_null(value) || (json_is_number(value) && isfinite((float)score));
        scores[i * stride] = json_is_null(value) ? NAN : (float)score;
    }
    json_decref(list);
    return good;
}

/* Takes an answer of worker `index`: text[0..n), followed by a NUL. */
static inline bool reward_worker_answer(RewardCommand *c, int index, const RewardBatch *b, const char *text, size_t n,
                                        Error *e) {
    RewardWorker *w = &c->worker[index];
    if (w->read == w->written)
        return reward_command_fail(c, e, "wrote '%.100s', one answer more than the %d %s%s it was given", text,
                                   w->written, c->groups ? "group" : "completion", w->written == 1 ? "" : "s");
    const int line = index + w->read * c->workers, at = b->first[line], count = b->first[line + 1] - at;
    float *scores = b->scores + (size_t)at * (size_t)b->stride;
    if (c->groups && !reward_parse_group(text, n, count, scores, b->stride))
        return reward_command_fail(c, e, "answer %d of %d is '%.100s', must be a list of %d numbers or nulls",
                                   w->read + 1, w->lines, text, count);
    if (!c->groups && !reward_parse(text, n, scores))
        return reward_command_fail(c, e, "answer %d of %d is '%.100s', must be a number or null", w->read + 1, w->lines,
                                   text);
    w->read++;
    return true;
}

/* Parses the complete lines of a worker; false if one is not an answer or there is one too many. */
static inline bool reward_worker_take(RewardCommand *c, int index, const RewardBatch *b, Error *e) {
    TextBuffer *t = &c->worker[index].answer;
    const size_t most = (size_t)REWARD_LINE_MAX * (c->groups ? 64 : 1) - 1;
    size_t from = 0;
    for (char *end; t->length && (end = (char *)memchr(t->text + from, '\n', t->length - from));
         from = (size_t)(end - t->text) + 1) {
        *end = 0;
        if (!reward_worker_answer(c, index, b, t->text + from, (size_t)(end - t->text) - from, e)) return false;
    }
    if (from) memmove(t->text, t->text + from, t->length - from);
    t->length -= from;
    if (t->length < most) return true;
    t->text[80] = 0;
    return reward_command_fail(c, e, "answer %d of %d starts with '%s' and has no newline after %zu bytes, must be %s",
                               c->worker[index].read + 1, c->worker[index].lines, t->text, most,
                               c->groups ? "a list of numbers or nulls" : "a number or null");
}

/* What a worker has written after its last line, at most 80 bytes. */
static inline const char *reward_worker_rest(RewardWorker *w) {
    if (w->answer.length > 80) w->answer.text[80] = 0;
    return w->answer.length ? w->answer.text : NULL;
}

/* The program has not answered in time. */
static inline bool reward_command_late(RewardCommand *c, int index, Error *e) {
    RewardWorker *w = &c->worker[index];
    const char *partial = reward_worker_rest(w);
    return reward_command_fail(
        c, e,
        "%d of %d answers after %g seconds%s%s%s; it must answer in time and flush its output, or raise the timeout",
        w->read, w->lines, c->timeout, partial ? ", then '" : "", partial ? partial : "",
        partial ? "' without a newline" : "");
}

/* The program has ended or closed a pipe. */
static inline bool reward_command_lost(RewardCommand *c, int index, Error *e) {
    RewardWorker *w = &c->worker[index];
    Error why;
    char when[60];
    snprintf(when, sizeof when, "after %d of %d answers", w->read, w->lines);
    if (c->sandbox) sandbox_ending(c->sandbox, &w->process);
    process_failed(&w->process, when, &why);
    return reward_command_fail(c, e, "%s", why.text);
}

/* Moves bytes to and from a worker as far as possible without waiting. */
static inline bool reward_worker_move(RewardCommand *c, int index, const RewardBatch *b, Error *e) {
    RewardWorker *w = &c->worker[index];
    while (w->read < w->lines) {
        char bytes[1 << 14];
        size_t moved;
        if (!w->line && w->written < w->lines) {
            const int line = index + w->written * c->workers, at = b->first[line];
            w->line = c->groups ? reward_command_group(b->in + at, b->first[line + 1] - at, &w->length)
                                : reward_command_line(b->in + at, &w->length);
            w->sent = 0;
        }
        struct pollfd files[2] = {{.fd = w->process.out, .events = POLLIN},
                                  {.fd = w->line ? w->process.in : -1, .events = POLLOUT}};
        if (poll(files, 2, 0) <= 0) return true;
        switch (process_wait(&w->process, w->line ? w->line + w->sent : NULL, w->line ? w->length - w->sent : 0, bytes,
                             sizeof bytes, clock_seconds() + 1, &moved)) {
        case PROCESS_LATE: return true;
        case PROCESS_FAILED: return reward_command_lost(c, index, e);
        case PROCESS_READ:
            text_append(&w->answer, bytes, moved);
            if (!reward_worker_take(c, index, b, e)) return false;
            break;
        case PROCESS_WROTE:
            w->sent += moved;
            if (w->sent < w->length) break;
            free(w->line);
            w->line = NULL;
            w->written++;
        }
    }
    return true;
}

/* Waits until a worker has written something or accepts input, or until the deadline. */
static inline void reward_command_wait(const RewardCommand *c, double until) {
    struct pollfd *files = (struct pollfd *)xcalloc(2 * (size_t)c->workers, sizeof *files);
    const double left = until - clock_seconds();
    for (int i = 0; i < c->workers; i++) {
        const RewardWorker *w = &c->worker[i];
        files[2 * i] = (struct pollfd){.fd = w->read < w->lines ? w->process.out : -1, .events = POLLIN};
        files[2 * i + 1] = (struct pollfd){.fd = w->line ? w->process.in : -1, .events = POLLOUT};
    }
    if (left > 0) poll(files, 2 * (nfds_t)c->workers, (int)fmin(ceil(1e3 * left), 1e9));
    free(files);
}

/* Moves lines until all are answered. */
static inline bool reward_command_batch(RewardCommand *c, const RewardBatch *b, Error *e) {
    const double until = clock_seconds() + c->timeout;
    for (int i = 0; i < c->workers; i++) {
        RewardWorker *w = &c->worker[i];
        w->lines = (b->lines - i + c->workers - 1) / c->workers;
        w->written = w->read = 0;
    }
    for (;;) {
        int open = -1;
        for (int i = 0; i < c->workers; i++) {
            if (!reward_worker_move(c, i, b, e)) return false;
            if (c->worker[i].read < c->worker[i].lines && open < 0) open = i;
        }
        if (open < 0) break;
        if (clock_seconds() >= until) return reward_command_late(c, open, e);
        reward_command_wait(c, until);
    }
    for (int i = 0; i < c->workers; i++) {
        const char *rest = reward_worker_rest(&c->worker[i]);
        if (rest)
            return reward_command_fail(c, e, "wrote '%s' after its last answer, must write one %s", rest,
                                       c->groups ? "list for each group" : "number for each completion");
    }
    return true;
}

/* Scores n completions; writes scores[i * stride], NaN = could not be scored. After a failure the program has ended and
 * every further call fails. */
static inline bool reward_command_score(RewardCommand *c, const RewardInput *in, int n, float *scores, int stride,
                                        Error *e) {
    if (!c->worker || !c->worker[0].process.pid) return error_set(e, "reward command '%.300s': has ended", c->program);
    int *first = (int *)xcalloc((size_t)n + 1, sizeof *first), lines = 0;
    for (int i = 0; i < n; i++)
        if (!i || !c->groups || in[i].group != in[i - 1].group) first[lines++] = i;
    first[lines] = n;
    const RewardBatch b = {in, first, lines, scores, stride};
    const bool ok = reward_command_batch(c, &b, e);
    free(first);
    return ok;
}

#endif
