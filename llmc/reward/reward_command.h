/* reward_command.h - rewards computed by a user's program, in any language.
 *
 * The program is started once by `sh -c` and runs as long as the trainer. For every completion it reads one line of
 * JSON on its standard input and must write one line on its standard output, in the same order: a finite number, or
 * null / none / nan if it cannot score the completion. Its standard error is the trainer's.
 *
 *     {"prompt":"12+34=","completion":"46","answer":"46","task":"add","level":2}      ->      1.0
 *
 * "prompt", "completion", "answer" and "task" are always present; the record's other fields follow. Bytes that are not
 * valid UTF-8 are replaced by U+FFFD. The program must flush its output (python: print(..., flush=True)) and should
 * exit at the end of its input.
 *
 *     import json, sys
 *     for line in sys.stdin:
 *         r = json.loads(line)
 *         print(float(r["answer"] in r["completion"]), flush=True)
 *
 * Owns: the child, its pipes, the protocol. Both pipes are non-blocking and served by one poll loop, so the program may
 * answer line by line, in blocks, or after reading all its input. If the child ends (exit status or signal), exceeds
 * the timeout of a batch, or writes a line that is not a number or too many lines, it is killed and the call fails with
 * an Error. The child leads its own process group. On close its input ends, and processes of the group that still run
 * half a second later are killed. The terminal's Ctrl-C does not reach it, so a trainer can finish its step.
 */
#ifndef LLMC_REWARD_REWARD_COMMAND_H
#define LLMC_REWARD_REWARD_COMMAND_H

#include "../base/clock.h"
#include "../base/error.h"
#include "../base/text.h"
#include "verify.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REWARD_LINE_MAX = 4096 }; /* bytes of an answer line */

typedef struct RewardCommand {
    const char *program;
    double timeout; /* seconds per batch */
    pid_t pid;      /* 0: not running */
    int in, out;    /* pipe ends connected to its standard input and output */
    char *line;     /* the JSON line being sent */
    size_t length, sent;
    char answer[REWARD_LINE_MAX]; /* output not yet parsed */
    size_t answer_length;
} RewardCommand;

/* Opens a pipe whose ends are closed on exec and have file descriptors above 2. */
static inline bool reward_pipe(int end[2], Error *e) {
    int raw[2];
    if (pipe2(raw, O_CLOEXEC)) return error_set(e, "reward command: pipe: %s", strerror(errno));
    for (int i = 0; i < 2; i++) end[i] = fcntl(raw[i], F_DUPFD_CLOEXEC, 3);
    const int failure = errno;
    close(raw[0]), close(raw[1]);
    if (end[0] >= 0 && end[1] >= 0) return true;
    if (end[0] >= 0) close(end[0]);
    if (end[1] >= 0) close(end[1]);
    return error_set(e, "reward command: pipe: %s", strerror(failure));
}

/* Waits up to `seconds` for the child to end, without reaping it. */
static inline bool reward_command_ended(const RewardCommand *c, double seconds) {
    const double until = clock_seconds() + seconds;
    for (;;) {
        siginfo_t info = {0};
        if (!waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOWAIT | WNOHANG) && info.si_pid) return true;
        if (clock_seconds() >= until) return false;
        const struct timespec pause = {0, 2000000};
        nanosleep(&pause, NULL);
    }
}

/* Kills the whole process group and reaps the child; safe to call twice. Returns its status, or -1 if it was not
 * running. */
static inline int reward_command_end(RewardCommand *c) {
    if (c->in >= 0) close(c->in);
    if (c->out >= 0) close(c->out);
    c->in = c->out = -1;
    free(c->line);
    c->line = NULL;
    if (!c->pid) return -1;
    int status = -1;
    kill(-c->pid, SIGKILL); /* the child is not reaped yet, so the group id is not reused */
    while (waitpid(c->pid, &status, 0) < 0 && errno == EINTR) {}
    c->pid = 0;
    return status;
}

/* Ends the child: closes its input, waits up to half a second, then kills its process group. */
static inline void reward_command_close(RewardCommand *c) {
    if (c->in >= 0) close(c->in);
    c->in = -1;
    if (c->pid) reward_command_ended(c, 0.5);
    reward_command_end(c);
}

/* Starts `program`; `timeout` > 0 is the maximum time of a batch in seconds. */
static inline bool reward_command_open(RewardCommand *c, const char *program, double timeout, Error *e) {
    *c = (RewardCommand){.program = program, .timeout = timeout, .in = -1, .out = -1};
    int down[2] = {-1, -1}, up[2] = {-1, -1};
    if (!reward_pipe(down, e)) return false;
    if (!reward_pipe(up, e)) {
        close(down[0]), close(down[1]);
        return false;
    }
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, defaults;
    sigemptyset(&none);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    sigaddset(&defaults, SIGINT);
    sigaddset(&defaults, SIGTERM);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_adddup2(&actions, down[0], 0);
    posix_spawn_file_actions_adddup2(&actions, up[1], 1);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    char *const words[] = {(char *)"sh", (char *)"-c", (char *)program, NULL};
    const int failure = posix_spawn(&c->pid, "/bin/sh", &actions, &attributes, words, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    close(down[0]), close(up[1]);
    c->in = down[1];
    c->out = up[0];
    fcntl(c->in, F_SETFL, O_NONBLOCK);
    fcntl(c->out, F_SETFL, O_NONBLOCK);
    if (!failure) return true;
    c->pid = 0;
    reward_command_end(c);
    return error_set(e, "reward command '%s': cannot start: %s", program, strerror(failure));
}

/* Kills the child and sets the error to the formatted reason. */
PRINTF_LIKE(3, 4)
static inline bool reward_command_fail(RewardCommand *c, Error *e, const char *format, ...) {
    char what[600];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    reward_command_end(c);
    return error_set(e, "reward command '%.300s': %s", c->program, what);
}

/* The child closed a pipe: reports how it ended, or that it is still running. */
static inline bool reward_command_lost(RewardCommand *c, const char *pipe, int answers, int n, Error *e) {
    if (!reward_command_ended(c, 1.0))
        return reward_command_fail(c, e, "closed its %s after %d of %d answers but is still running", pipe, answers, n);
    const int status = reward_command_end(c);
    if (WIFSIGNALED(status))
        return reward_command_fail(c, e, "killed by signal %d (%s) after %d of %d answers", WTERMSIG(status),
                                   strsignal(WTERMSIG(status)), answers, n);
    const int code = WEXITSTATUS(status);
    return reward_command_fail(
        c, e, "ended with exit status %d%s after %d of %d answers, must run until the end of its input", code,
        code == 127 ? " (command not found)" : "", answers, n);
}

/* The text as a JSON string; every byte that is not part of a valid UTF-8 character becomes U+FFFD. */
static inline json_t *reward_string(const char *text) {
    json_t *string = json_string(text ? text : "");
    if (string) return string;
    size_t left = strlen(text);
    char *clean = (char *)xmalloc(3 * left + 1), *to = clean;
    while (left) {
        const size_t n = (size_t)utf8_length(text, left);
        memcpy(to, n ? text : "\xEF\xBF\xBD", n ? n : 3);
        to += n ? n : 3;
        text += n ? n : 1;
        left -= n ? n : 1;
    }
    *to = 0;
    string = json_string(clean);
    free(clean);
    return string;
}

/* The JSON line of one completion, with its newline; allocated with malloc(). */
static inline char *reward_command_line(const RewardInput *in, size_t *length) {
    json_t *line = json_object(), *fields = verify_fields(in);
    json_object_set_new(line, "prompt", reward_string(in->prompt));
    json_object_set_new(line, "completion", reward_string(in->completion));
    json_object_set_new(line, "answer", reward_string(in->answer));
    json_object_set_new(line, "task", reward_string(in->task));
    json_object_update_missing(line, fields);
    char *text = json_dumps(line, JSON_COMPACT);
    json_decref(line), json_decref(fields);
    if (!text) die("out of memory: JSON line for the reward command");
    *length = strlen(text);
    text = (char *)xrealloc(text, *length + 2, 1);
    text[(*length)++] = '\n';
    text[*length] = 0;
    return text;
}

/* write() that fails with EPIPE without raising SIGPIPE, however the trainer handles that signal. */
static inline ssize_t reward_write(int file, const void *data, size_t n) {
    sigset_t pipe, before, pending;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    sigpending(&pending);
    const bool was_pending = sigismember(&pending, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    const ssize_t written = write(file, data, n);
    const int failure = errno;
    if (written < 0 && failure == EPIPE && !was_pending) {
        const struct timespec now = {0, 0};
        while (sigtimedwait(&pipe, NULL, &now) < 0 && errno == EINTR) {}
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = failure;
    return written;
}

/* Parses one answer line (NUL-terminated, no newline): a finite number, or null / none / nan for NaN. */
static inline bool reward_parse(const char *text, float *score) {
    char *end;
    while (verify_space(*text)) text++;
    size_t n = strlen(text);
    while (n && verify_space(text[n - 1])) n--;
    if ((n == 4 && (!strncasecmp(text, "null", n) || !strncasecmp(text, "none", n))) ||
        (n == 3 && !strncasecmp(text, "nan", n))) {
        *score = NAN;
        return true;
    }
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
        if (!reward_parse(c->answer + from, &scores[(size_t)*answers * (size_t)stride]))
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

/* Scores n completions; writes scores[i * stride], NaN = could not be scored. After a failure the child has ended and
 * every further call fails. */
static inline bool reward_command_score(RewardCommand *c, const RewardInput *in, int n, float *scores, int stride,
                                        Error *e) {
    const double until = clock_seconds() + c->timeout;
    int sent = 0, answers = 0; /* lines written; answers read */
    if (!c->pid) return error_set(e, "reward command '%.300s': has ended", c->program);
    while (answers < n) {
        if (sent < n && !c->line) {
            c->line = reward_command_line(&in[sent], &c->length);
            c->sent = 0;
        }
        struct pollfd files[2] = {{.fd = c->out, .events = POLLIN}, {.fd = sent < n ? c->in : -1, .events = POLLOUT}};
        const double left = until - clock_seconds();
        const int ready = left > 0 ? poll(files, 2, (int)fmin(ceil(1e3 * left), 1e9)) : 0;
        if (ready < 0 && errno == EINTR) continue;
        if (ready < 0) return reward_command_fail(c, e, "poll: %s", strerror(errno));
        if (ready == 0) {
            c->answer[c->answer_length < 80 ? c->answer_length : 80] = 0;
            const char *partial = c->answer_length ? c->answer : NULL;
            return reward_command_fail(
                c, e,
                "%d of %d answers after %g seconds%s%s%s; it must answer in time and flush its output, or raise the timeout",
                answers, n, c->timeout, partial ? ", then '" : "", partial ? partial : "",
                partial ? "' without a newline" : "");
        }
        if (files[0].revents) { /* before writing, so that a superfluous line is never taken for the next answer */
            const ssize_t got = read(c->out, c->answer + c->answer_length, sizeof c->answer - 1 - c->answer_length);
            if (got == 0) return reward_command_lost(c, "output", answers, n, e);
            if (got < 0 && errno != EAGAIN && errno != EINTR)
                return reward_command_fail(c, e, "read: %s", strerror(errno));
            if (got > 0) c->answer_length += (size_t)got;
            if (got > 0 && !reward_command_take(c, scores, stride, &answers, sent, n, e)) return false;
        }
        if (files[1].revents) {
            const ssize_t written = reward_write(c->in, c->line + c->sent, c->length - c->sent);
            if (written < 0 && errno == EPIPE) return reward_command_lost(c, "input", answers, n, e);
            if (written < 0 && errno != EAGAIN && errno != EINTR)
                return reward_command_fail(c, e, "write: %s", strerror(errno));
            if (written > 0) c->sent += (size_t)written;
            if (c->sent == c->length) {
                free(c->line);
                c->line = NULL;
                sent++;
            }
        }
    }
    if (!c->answer_length) return true;
    c->answer[c->answer_length < 80 ? c->answer_length : 80] = 0;
    return reward_command_fail(c, e, "wrote '%s' after its last answer, must write one number for each completion",
                               c->answer);
}

#endif
