/* reward_command.h - rewards computed by a user's program, in any language.
 *
 * The program is started once by `sh -c` and runs as long as the trainer. For every completion it reads one line of
 * JSON on its standard input and must write one line on its standard output, in the same order: a finite number, or
 * null / none / nan if it cannot score the completion. Its standard error is the trainer's.
 *
 *     {"prompt":"12+34=","completion":"46","answer":"46","task":"add","level":2}      ->      1.0
 *
 * "prompt", "completion", "answer" and "task" are always present; the record's other fields follow, among them
 * "messages" if the record has the messages of which "prompt" is the rendered text. For a completion of several turns,
 * "completion" is the last one, "messages" has all turns, calls and results, and "stop" says why it ended. Bytes that are not
 * valid UTF-8 are replaced by U+FFFD. The program must flush its output (python: print(..., flush=True)) and should
 * exit at the end of its input.
 *
 *     import json, sys
 *     for line in sys.stdin:
 *         r = json.loads(line)
 *         print(float(r["answer"] in r["completion"]), flush=True)
 *
 * The program may answer line by line, in blocks, or after reading all its input (../base/process.h). If it ends (exit
 * status or signal), exceeds the timeout of a batch, or writes a line that is not a number or too many lines, it is
 * killed and the call fails with an Error. Closing ends its input, and processes of its group that still run half a
 * second later are killed. The terminal's Ctrl-C does not reach it, so a trainer can finish its step.
 */
#ifndef LLMC_REWARD_REWARD_COMMAND_H
#define LLMC_REWARD_REWARD_COMMAND_H

#include "../base/clock.h"     /* clock_seconds */
#include "../base/error.h"     /* Error, error_set, PRINTF_LIKE, checked_object, ... */
#include "../base/json_text.h" /* json_utf8 */
#include "../base/process.h"   /* PROCESS_FAILED, PROCESS_LATE, PROCESS_READ, PROCESS_WROTE, ... */
#include "verify_answer.h"     /* RewardInput, verify_span, verify_space, VerifySpan, ... */

enum { REWARD_LINE_MAX = 4096 }; /* bytes of an answer line */

typedef struct RewardCommand {
    const char *program;
    double timeout; /* seconds per batch */
    Process process;
    char *line; /* the JSON line being sent, or NULL */
    size_t length, sent;
    char answer[REWARD_LINE_MAX]; /* output not yet parsed */
    size_t answer_length;
} RewardCommand;

/* Ends the program: closes its input, waits up to half a second, then kills its process group. */
static inline void reward_command_close(RewardCommand *c) {
    process_close(&c->process);
    free(c->line);
    c->line = NULL;
}

/* Starts `program`; `timeout` > 0 is the maximum time of a batch in seconds. */
static inline bool reward_command_open(RewardCommand *c, const char *program, double timeout, Error *e) {
    Error why;
    *c = (RewardCommand){.program = program, .timeout = timeout};
    return process_open(&c->process, program, &why) || error_set(e, "reward command '%.300s': %s", program, why.text);
}

/* Kills the program and sets the error to the formatted reason. */
PRINTF_LIKE(3, 4)
static inline bool reward_command_fail(RewardCommand *c, Error *e, const char *format, ...) {
    char what[600];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    process_kill(&c->process);
    free(c->line);
    c->line = NULL;
    return error_set(e, "reward command '%.300s': %s", c->program, what);
}

/* Adds a text to the line, with U+FFFD for every byte that belongs to no character. */
static inline void reward_command_text(json_t *line, const char *key, VerifySpan text) {
    json_object_set_new(line, key, json_utf8(text.s, text.n));
}

/* Adds the messages of a completion of several turns, after those of the prompt, and why it ended. */
static inline void reward_command_turns(json_t *line, const RewardInput *in) {
    const json_t *given = json_object_get(line, "messages");
    json_t *messages = json_is_array(given) ? json_copy((json_t *)given) : json_array();
    if (!json_is_array(given))
        json_array_append_new(messages,
                              json_pack("{s:s,s:O}", "role", "user", "content", json_object_get(line, "prompt")));
    json_array_extend(messages, (json_t *)in->messages);
    json_object_set_new(line, "messages", messages);
    json_object_set_new(line, "stop", json_string(in->stop));
}

/* The JSON line of one completion, with its newline; allocated with malloc(). */
static inline char *reward_command_line(const RewardInput *in, size_t *length) {
    json_t *line = json_object(), *fields = verify_fields(in);
    reward_command_text(line, "prompt", verify_span(in->prompt));
    reward_command_text(line, "completion", verify_completion(in));
    reward_command_text(line, "answer", verify_span(in->answer));
    reward_command_text(line, "task", verify_span(in->task));
    json_object_update_missing(line, fields);
    if (in->messages) reward_command_turns(line, in);
    char *text = (char *)checked_object(json_dumps(line, JSON_COMPACT), "a line for the reward command");
    json_decref(line), json_decref(fields);
    *length = strlen(text);
    text = (char *)xrealloc(text, *length + 2, 1);
    text[(*length)++] = '\n';
    text[*length] = 0;
    return text;
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

/* Parses the complete lines in c->answer; false if a line is not a number or there is one too many. */
static inline bool reward_command_take(RewardCommand *c, float *scores, int stride, int *answers, int sent, int n,
                                       Error *e) {
    size_t from = 0;
    for (char *end; (end = (char *)memchr(c->answer + from, '\n', c->answer_length - from));
         from = (size_t)(end - c->answer) + 1) {
        *end = 0;
        if (*answers == sent)
            return reward_command_fail(c, e, "wrote '%.100s', one answer more than the %d completion%s it was given",
                                       c->answer + from, sent, sent == 1 ? "" : "s");
        if (!reward_parse(c->answer + from, (size_t)(end - c->answer) - from,
                          &scores[(size_t)*answers * (size_t)stride]))
            return reward_command_fail(c, e, "answer %d of %d is '%.100s', must be a number or null", *answers + 1, n,
                                       c->answer + from);
        ++*answers;
    }
    c->answer_length -= from;
    memmove(c->answer, c->answer + from, c->answer_length);
    if (c->answer_length < sizeof c->answer - 1) return true;
    c->answer[80] = 0;
    return reward_command_fail(
        c, e, "answer %d of %d starts with '%s' and has no newline after %d bytes, must be a number or null",
        *answers + 1, n, c->answer, REWARD_LINE_MAX - 1);
}

/* The program has not answered in time. */
static inline bool reward_command_late(RewardCommand *c, int answers, int n, Error *e) {
    c->answer[c->answer_length < 80 ? c->answer_length : 80] = 0;
    const char *partial = c->answer_length ? c->answer : NULL;
    return reward_command_fail(
        c, e,
        "%d of %d answers after %g seconds%s%s%s; it must answer in time and flush its output, or raise the timeout",
        answers, n, c->timeout, partial ? ", then '" : "", partial ? partial : "",
        partial ? "' without a newline" : "");
}

/* The program has ended or closed a pipe. */
static inline bool reward_command_lost(RewardCommand *c, int answers, int n, Error *e) {
    Error why;
    char when[60];
    snprintf(when, sizeof when, "after %d of %d answers", answers, n);
    process_failed(&c->process, when, &why);
    return reward_command_fail(c, e, "%s", why.text);
}

/* Scores n completions; writes scores[i * stride], NaN = could not be scored. After a failure the program has ended and
 * every further call fails. */
static inline bool reward_command_score(RewardCommand *c, const RewardInput *in, int n, float *scores, int stride,
                                        Error *e) {
    const double until = clock_seconds() + c->timeout;
    int sent = 0, answers = 0; /* lines written; answers read */
    if (!c->process.pid) return error_set(e, "reward command '%.300s': has ended", c->program);
    while (answers < n) {
        if (sent < n && !c->line) {
            c->line = reward_command_line(&in[sent], &c->length);
            c->sent = 0;
        }
        size_t moved;
        const char *line = c->line ? c->line + c->sent : NULL;
        switch (process_wait(&c->process, line, line ? c->length - c->sent : 0, c->answer + c->answer_length,
                             sizeof c->answer - 1 - c->answer_length, until, &moved)) {
        case PROCESS_LATE: return reward_command_late(c, answers, n, e);
        case PROCESS_FAILED: return reward_command_lost(c, answers, n, e);
        case PROCESS_READ:
            c->answer_length += moved;
            if (!reward_command_take(c, scores, stride, &answers, sent, n, e)) return false;
            break;
        case PROCESS_WROTE:
            c->sent += moved;
            if (c->sent < c->length) break;
            free(c->line);
            c->line = NULL;
            sent++;
        }
    }
    if (!c->answer_length) return true;
    c->answer[c->answer_length < 80 ? c->answer_length : 80] = 0;
    return reward_command_fail(c, e, "wrote '%s' after its last answer, must write one number for each completion",
                               c->answer);
}

#endif
