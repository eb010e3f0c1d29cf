/* sandbox_process.h - a child program with limits: how it starts, its pipes, and how everything that it started ends.
 *
 * The child leads a session of its own, so the terminal's Ctrl-C does not reach it, and inherits no file descriptor but
 * its standard streams and those that are named. It is started by vfork(), which takes the same time however much memory
 * the parent has; until it runs the program it makes only system calls, as CPython's subprocess module does.
 *
 *     SandboxProcess p;
 *     char *const words[] = {(char *)"/bin/true", NULL};
 *     const SandboxStart start = {
 *         .word = words, .environment = environ, .memory = 1 << 30, .pass = -1, .rules = -1, .guard = -1};
 *     if (!sandbox_process_open(&p, &start, &e)) die("%s", e.text);
 *     sandbox_process_kill(&p);
 *
 * Limits of the child and of each process that it starts: address space, 16 MiB a file, 64 files, a stack of 64 MiB, no
 * core file. The runner sets those of processor time and of the number of processes. If memory runs out on the machine,
 * the kernel ends these processes before any other (oom_score_adj).
 */
#ifndef LLMC_SANDBOX_SANDBOX_PROCESS_H
#define LLMC_SANDBOX_SANDBOX_PROCESS_H

#include "../base/clock.h"   /* clock_seconds */
#include "../base/error.h"   /* Error, error_set */
#include "../base/process.h" /* process_pipe, process_write */
#include "../base/text.h"    /* text_clear, TextBuffer, text_free, text_reserve */
#include "sandbox_guard.h"   /* sandbox_guard_tell */
#include <linux/seccomp.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

enum { SANDBOX_FILES = 64, SANDBOX_FILE_MIB = 16, SANDBOX_STACK_MIB = 64 };

typedef struct SandboxStart {
    char *const *word, *const *environment; /* end with NULL; word[0] is a path */
    const char *folder;                     /* to start in, or NULL */
    int64_t memory;                         /* address space in bytes; 0: no limit, and the program may gain rights */
    int pass;                               /* a file descriptor that the program inherits, or -1 */
    int user;                               /* the user and group to become, or 0 */
    int rules;                              /* Landlock rules, or -1 */
    int guard;                              /* the pipe of a SandboxGuard, or -1 */
    bool errors;                            /* its standard error is the parent's */
    const struct sock_fprog *filter;        /* seccomp filter to install, or NULL */
} SandboxStart;

typedef struct SandboxProcess {
    pid_t pid;        /* 0: not running */
    int in, out, err; /* its standard streams, non-blocking; -1: closed */
    double start;     /* clock_seconds() */
    TextBuffer send;  /* what it has not read yet */
    size_t sent;
    TextBuffer got, said; /* its output that was not taken yet; its standard error */
    int guard;            /* of its start */
} SandboxProcess;

/* Sets a limit of the calling process; a hard limit that is lower already stays. */
static inline void sandbox_limit(__rlimit_resource_t what, int64_t value) {
    struct rlimit limit;
    if (getrlimit(what, &limit)) return;
    if (limit.rlim_max == RLIM_INFINITY || (rlim_t)value < limit.rlim_max) limit.rlim_max = (rlim_t)value;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(what, &limit);
}

/* In the child: closes every file above standard error when the program starts, except `pass`. */
static inline bool sandbox_child_files(const int stream[3], int pass) {
    for (int i = 0; i < 3; i++)
        if (dup2(stream[i], i) < 0) return false;
    if (syscall(SYS_close_range, 3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */)) {
        const int most = (int)sysconf(_SC_OPEN_MAX);
        for (int i = 3; i < most; i++) fcntl(i, F_SETFD, FD_CLOEXEC);
    }
    return pass < 0 || !fcntl(pass, F_SETFD, 0);
}

/* In the child: limits that hold for everything that it starts. */
static inline void sandbox_child_limits(const SandboxStart *s) {
    const int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (file >= 0) {
        if (write(file, "1000", 4) < 0) errno = 0;
        close(file);
    }
    sandbox_limit(RLIMIT_CORE, 0);
    if (!s->memory) return;
    sandbox_limit(RLIMIT_NOFILE, SANDBOX_FILES);
    sandbox_limit(RLIMIT_FSIZE, (int64_t)SANDBOX_FILE_MIB << 20);
    sandbox_limit(RLIMIT_STACK, (int64_t)SANDBOX_STACK_MIB << 20);
    sandbox_limit(RLIMIT_AS, s->memory);
}

/* In the child: gives up root's rights. The C library's functions would also change the parent's other threads. */
static inline bool sandbox_child_user(int user) {
    return !user || (!syscall(SYS_setgroups, 0, NULL) && !syscall(SYS_setresgid, user, user, user) &&
                     !syscall(SYS_setresuid, user, user, user));
}

/* In the child: becomes the program. Returns only if something failed, with errno. */
static inline void sandbox_child(const SandboxStart *s, const int stream[3]) {
    sigset_t none;
    sigemptyset(&none);
    if (setsid() < 0) return;
    sandbox_guard_tell(s->guard, '+', getpid());
    if (!sandbox_child_files(stream, s->pass)) return;
    if (s->folder && chdir(s->folder)) return;
    sandbox_child_limits(s);
    if (!sandbox_child_user(s->user) || prctl(PR_SET_PDEATHSIG, SIGKILL)) return;
    personality(ADDR_NO_RANDOMIZE); /* so that addresses which a program prints are the same in every run; may fail */
    if (s->memory && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return;
    if (s->rules >= 0 && syscall(SYS_landlock_restrict_self, s->rules, 0)) return;
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (s->filter && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, s->filter, 0, 0)) return;
    execve(s->word[0], s->word, s->environment);
}

/* Runs the program in a new process, or returns 0 with errno. The parent goes on when the program has started or has
 * failed to. Its handlers do not run in the child, which shares its memory until then: all signals are blocked. */
static __attribute__((noinline)) pid_t sandbox_vfork(const SandboxStart *s, const int stream[3]) {
    static const int reset[] = {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ, SIGPWR, SIGBUS};
    volatile int failure = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const pid_t pid = vfork();
    if (!pid) {
        for (size_t i = 0; i < sizeof reset / sizeof *reset; i++) {
            struct sigaction standard = {.sa_handler = SIG_DFL};
            sigaction(reset[i], &standard, NULL);
        }
        sandbox_child(s, stream);
        failure = errno ? errno : EINVAL;
        _exit(127);
    }
    if (pid < 0) failure = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid > 0 && failure) {
        sandbox_guard_tell(s->guard, '-', pid);
        waitpid(pid, NULL, 0);
    }
    errno = failure;
    return failure ? 0 : pid;
}

static inline void sandbox_process_shut(int *file) {
    if (*file >= 0) close(*file);
    *file = -1;
}

/* Kills the child and everything in its session's process group, and frees its buffers. Returns its status as waitpid()
 * does, or -1 if it was not running. */
static inline int sandbox_process_kill(SandboxProcess *p) {
    int status = -1;
    if (p->pid) {
        kill(-p->pid, SIGKILL);
        kill(p->pid, SIGKILL);
        sandbox_guard_tell(p->guard, '-', p->pid);
        while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR) {}
    }
    p->pid = 0;
    sandbox_process_shut(&p->in), sandbox_process_shut(&p->out), sandbox_process_shut(&p->err);
    text_free(&p->send), text_free(&p->got), text_free(&p->said);
    return status;
}

/* Starts the program. */
static inline bool sandbox_process_open(SandboxProcess *p, const SandboxStart *s, Error *e) {
    int down[2] = {-1, -1}, up[2] = {-1, -1}, side[2] = {-1, -1};
    *p = (SandboxProcess){.in = -1, .out = -1, .err = -1, .start = clock_seconds(), .guard = s->guard};
    bool ok = process_pipe(down, e) && process_pipe(up, e) && (s->errors || process_pipe(side, e));
    if (ok) {
        const int stream[3] = {down[0], up[1], s->errors ? STDERR_FILENO : side[1]};
        p->pid = sandbox_vfork(s, stream);
        if (!p->pid) ok = error_set(e, "cannot start %s: %s", s->word[0], strerror(errno));
    }
    sandbox_process_shut(&down[0]), sandbox_process_shut(&up[1]), sandbox_process_shut(&side[1]);
    p->in = down[1], p->out = up[0], p->err = side[0];
    for (int i = 0; ok && i < 3 - s->errors; i++) fcntl((const int[]){p->in, p->out, p->err}[i], F_SETFL, O_NONBLOCK);
    text_clear(&p->send), text_clear(&p->got), text_clear(&p->said);
    if (!ok) sandbox_process_kill(p);
    return ok;
}

/* Writes what the pipe takes. */
static inline void sandbox_process_flush(SandboxProcess *p) {
    while (p->in >= 0 && p->sent < p->send.length) {
        const ssize_t n = process_write(p->in, p->send.text + p->sent, p->send.length - p->sent);
        if (n > 0) p->sent += (size_t)n;
        else if (n < 0 && errno == EINTR) continue;
        else if (n < 0 && errno == EAGAIN) return;
        else sandbox_process_shut(&p->in);
    }
    text_clear(&p->send);
    p->sent = 0;
}

/* Reads from one of its streams what is there, up to `most` bytes in all; what is more stays. Closes it at its end. */
static inline void sandbox_process_read(int *file, TextBuffer *to, size_t most) {
    while (*file >= 0 && to->length < most) {
        const size_t room = most - to->length < 1 << 16 ? most - to->length : 1 << 16;
        text_reserve(to, room);
        const ssize_t n = read(*file, to->text + to->length, room);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            sandbox_process_shut(file);
            return;
        }
        to->length += (size_t)n;
        to->text[to->length] = 0;
    }
}

/* The files to wait for with poll(). */
static inline void sandbox_process_files(const SandboxProcess *p, struct pollfd files[3]) {
    files[0] = (struct pollfd){.fd = p->sent < p->send.length ? p->in : -1, .events = POLLOUT};
    files[1] = (struct pollfd){.fd = p->out, .events = POLLIN};
    files[2] = (struct pollfd){.fd = p->err, .events = POLLIN};
}

#endif
