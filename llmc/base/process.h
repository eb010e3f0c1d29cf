/* process.h - communication with a long-running child program through two pipes, with a deadline.
 *
 * The command runs in `sh -c` and leads a process group of its own, so the terminal's Ctrl-C does not reach it and a
 * kill reaches everything that it starts. Its standard error is the parent's. Both pipes are non-blocking and one call,
 * process_wait(), serves both, so the child may answer line by line, in blocks, or after it has read all its input: the
 * parent never waits to write to a child that waits to write.
 *
 *     Process p;
 *     char answer[80];
 *     size_t sent = 0, got = 0, moved;
 *     if (!process_open(&p, "sed -u s/e/a/", &e)) die("%s", e.text);
 *     const double until = clock_seconds() + 10;
 *     while (!memchr(answer, '\n', got)) {
 *         switch (process_wait(&p, &"hello\n"[sent], 6 - sent, answer + got, sizeof answer - got, until, &moved)) {
 *         case PROCESS_READ: got += moved; break;
 *         case PROCESS_WROTE: sent += moved; break;
 *         case PROCESS_LATE: die("no answer in 10 seconds");
 *         case PROCESS_FAILED: process_failed(&p, "after the greeting", &e); die("%s", e.text);
 *         }
 *     }
 *     process_close(&p);
 *
 * The functions do not change how the program handles SIGPIPE. A zeroed Process is not running. No process of the group
 * remains after process_close() or process_kill(), except one that has left the group.
 *
 * Nor does one remain if the parent ends in any other way, even by SIGKILL. The group's leader is a shell, the guard,
 * which waits for the end of a pipe that the parent holds open, and then kills the group. It is started before the
 * command, which joins its group, so there is no moment at which the command runs without it.
 */
#ifndef LLMC_BASE_PROCESS_H
#define LLMC_BASE_PROCESS_H

#include "clock.h" /* clock_seconds */
#include "error.h" /* error_set, Error */
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct Process {
    pid_t pid;   /* 0: not running */
    pid_t guard; /* leader of the process group */
    bool leads;  /* the child itself leads its group, and there is no guard: it runs in a sandbox */
    int alive;   /* end of the pipe that the guard waits for; 0: closed */
    int in, out; /* pipe ends connected to its standard input and output; 0: closed */
    /* After PROCESS_FAILED: the system call that failed and its errno; or the pipe that the child closed and 0. */
    const char *what;
    int error;
} Process;

/* What process_wait() did, or why it did nothing. */
typedef enum ProcessEvent { PROCESS_READ, PROCESS_WROTE, PROCESS_LATE, PROCESS_FAILED } ProcessEvent;

/* Opens a pipe whose ends are closed on exec and have file descriptors above 2. */
static inline bool process_pipe(int end[2], Error *e) {
    int raw[2];
    if (pipe2(raw, O_CLOEXEC)) return error_set(e, "pipe: %s", strerror(errno));
    for (int i = 0; i < 2; i++) end[i] = fcntl(raw[i], F_DUPFD_CLOEXEC, 3);
    const int failure = errno;
    close(raw[0]), close(raw[1]);
    if (end[0] >= 0 && end[1] >= 0) return true;
    for (int i = 0; i < 2; i++) {
        if (end[i] >= 0) close(end[i]);
        end[i] = -1;
    }
    return error_set(e, "pipe: %s", strerror(failure));
}

/* Waits up to `seconds` for the child to end, without reaping it. */
static inline bool process_ended(const Process *p, double seconds) {
    const double until = clock_seconds() + seconds;
    for (;;) {
        siginfo_t info = {0};
        if (!waitid(P_PID, (id_t)p->pid, &info, WEXITED | WNOWAIT | WNOHANG) && info.si_pid) return true;
        if (clock_seconds() >= until) return false;
        const struct timespec pause = {0, 2000000};
        nanosleep(&pause, NULL);
    }
}

/* Kills the whole process group and reaps the child and the guard; safe to call twice. Returns the child's status as
 * waitpid() does, or -1 if it was not running. */
static inline int process_kill(Process *p) {
    int status = -1;
    if (p->guard) kill(-p->guard, SIGKILL); /* the guard is not reaped yet, so the group id is not reused */
    if (p->leads && p->pid) kill(-p->pid, SIGKILL);
    if (p->in) close(p->in);
    if (p->out) close(p->out);
    if (p->alive) close(p->alive);
    while (p->guard && waitpid(p->guard, NULL, 0) < 0 && errno == EINTR) {}
    while (p->pid && waitpid(p->pid, &status, 0) < 0 && errno == EINTR) {}
    p->pid = p->guard = 0;
    p->in = p->out = p->alive = 0;
    return status;
}

/* Ends the child: closes its input, waits up to half a second, then kills its process group. */
static inline void process_close(Process *p) {
    if (p->in) close(p->in);
    p->in = 0;
    if (p->pid) process_ended(p, 0.5);
    process_kill(p);
}

/* Starts `command` in /bin/sh with these standard streams, as a member of the process group of `leader`, or as the
 * leader of a new one if that is 0. output: -1 for the parent's. environment: as execve()'s. */
static inline bool process_spawn(pid_t *pid, const char *command, pid_t leader, int input, int output,
                                 char *const *environment, Error *e) {
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
    posix_spawn_file_actions_adddup2(&actions, input, 0);
    if (output >= 0) posix_spawn_file_actions_adddup2(&actions, output, 1);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attributes, leader);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    char *const words[] = {(char *)"sh", (char *)"-c", (char *)command, NULL};
    const int failure = posix_spawn(pid, "/bin/sh", &actions, &attributes, words, environment);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (!failure) return true;
    *pid = 0;
    return error_set(e, "cannot start: %s", strerror(failure));
}

/* Starts the guard. A terminal's hangup or a kill of the command's own group, such as `kill 0`, does not end it. */
static inline bool process_guard(Process *p, Error *e) {
    static const char *const guard = "trap '' HUP INT QUIT TERM USR1 USR2; read -r _; kill -s KILL 0";
    int end[2];
    if (!process_pipe(end, e)) return false;
    p->alive = end[1];
    const bool ok = process_spawn(&p->guard, guard, 0, end[0], -1, environ, e);
    close(end[0]);
    return ok;
}

/* Starts `command` in /bin/sh with an environment, as execve()'s. */
static inline bool process_open_with(Process *p, const char *command, char *const *environment, Error *e) {
    int down[2] = {-1, -1}, up[2] = {-1, -1};
    *p = (Process){0};
    bool ok = process_pipe(down, e);
    if (ok) p->in = down[1];
    ok = ok && process_pipe(up, e);
    if (up[0] >= 0) p->out = up[0];
    ok = ok && process_guard(p, e) && process_spawn(&p->pid, command, p->guard, down[0], up[1], environment, e);
    if (down[0] >= 0) close(down[0]);
    if (up[1] >= 0) close(up[1]);
    if (!ok) {
        process_kill(p);
        return false;
    }
    fcntl(p->in, F_SETFL, O_NONBLOCK);
    fcntl(p->out, F_SETFL, O_NONBLOCK);
    return true;
}

/* Starts `command` in /bin/sh with this program's environment. */
static inline bool process_open(Process *p, const char *command, Error *e) {
    return process_open_with(p, command, environ, e);
}

/* write() that fails with EPIPE without raising SIGPIPE, however the program handles that signal. */
static inline ssize_t process_write(int file, const void *data, size_t n) {
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

/* Records why process_wait() fails. */
static inline ProcessEvent process_fail(Process *p, const char *what, int error) {
    p->what = what;
    p->error = error;
    return PROCESS_FAILED;
}

/* Waits until the child has written something or accepts input, then moves as many bytes as it can without waiting, in
 * one direction:
 *
 *     PROCESS_READ     *moved bytes of its output are in to[room]; output comes first, so the caller sees it before
 *                      more input is written
 *     PROCESS_WROTE    *moved bytes of data[n] were written to its input; with n = 0 there is nothing to write
 *     PROCESS_LATE     clock_seconds() has passed `until`; the child still runs
 *     PROCESS_FAILED   the child closed a pipe, or a system call failed; process_failed() reports it
 */
static inline ProcessEvent process_wait(Process *p, const char *data, size_t n, char *to, size_t room, double until,
                                        size_t *moved) {
    for (;;) {
        struct pollfd files[2] = {{.fd = room ? p->out : -1, .events = POLLIN},
                                  {.fd = n ? p->in : -1, .events = POLLOUT}};
        const double left = until - clock_seconds();
        const int ready = left > 0 ? poll(files, 2, (int)fmin(ceil(1e3 * left), 1e9)) : 0;
        if (ready == 0) return PROCESS_LATE;
        if (ready < 0 && errno == EINTR) continue;
        if (ready < 0) return process_fail(p, "poll", errno);
        if (files[0].revents) {
            const ssize_t got = read(p->out, to, room);
            *moved = got > 0 ? (size_t)got : 0;
            if (got > 0) return PROCESS_READ;
            if (got == 0) return process_fail(p, "output", 0);
            if (errno != EAGAIN && errno != EINTR) return process_fail(p, "read", errno);
        }
        if (files[1].revents) {
            const ssize_t written = process_write(p->in, data, n);
            *moved = written > 0 ? (size_t)written : 0;
            if (written > 0) return PROCESS_WROTE;
            if (written < 0 && errno == EPIPE) return process_fail(p, "input", 0);
            if (written < 0 && errno != EAGAIN && errno != EINTR) return process_fail(p, "write", errno);
        }
    }
}

/* Kills the child after PROCESS_FAILED and reports the reason: a failed system call, or how the child ended, or that it
 * has closed a pipe and still runs. when: how far the exchange had got, such as "after 2 of 3 lines". Always returns
 * false. */
static inline bool process_failed(Process *p, const char *when, Error *e) {
    if (p->error) {
        process_kill(p);
        return error_set(e, "%s: %s", p->what, strerror(p->error));
    }
    const bool ended = process_ended(p, 1.0);
    const int status = process_kill(p);
    if (!ended) return error_set(e, "closed its %s %s but is still running", p->what, when);
    if (WIFSIGNALED(status))
        return error_set(e, "killed by signal %d (%s) %s", WTERMSIG(status), strsignal(WTERMSIG(status)), when);
    const int code = WEXITSTATUS(status);
    return error_set(e, "ended with exit status %d%s %s, must run until the end of its input", code,
                     code == 127 ? " (command not found)" : "", when);
}

#endif
