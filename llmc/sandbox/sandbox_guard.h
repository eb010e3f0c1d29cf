/* sandbox_guard.h - a process that kills what runs in the sandbox if this program ends without doing so, even by SIGKILL.
 *
 * PR_SET_PDEATHSIG and bubblewrap's --die-with-parent are not enough: the children of the child that had the signal stay,
 * and bubblewrap has moments at which it has a child that is not protected yet. The guard is a shell that reads lines from
 * a pipe which only this program holds open: `+ GROUP` from each child before it becomes its program, `- GROUP` before its
 * process id is free for others. At the end of the pipe it kills the groups that are left.
 *
 *     SandboxGuard g;
 *     if (!sandbox_guard_open(&g, &e)) die("%s", e.text);
 *     sandbox_guard_tell(g.file, '+', 12345);
 *     sandbox_guard_tell(g.file, '-', 12345);
 *     sandbox_guard_close(&g);
 */
#ifndef LLMC_SANDBOX_SANDBOX_GUARD_H
#define LLMC_SANDBOX_SANDBOX_GUARD_H

#include "../base/error.h"   /* Error */
#include "../base/process.h" /* process_pipe, process_spawn */

typedef struct SandboxGuard {
    pid_t pid; /* 0: there is none */
    int file;  /* the pipe that it reads; -1: closed */
} SandboxGuard;

static inline bool sandbox_guard_open(SandboxGuard *g, Error *e) {
    static const char *const guard =
        "trap '' HUP INT QUIT TERM USR1 USR2; all=; "
        "while read -r op group; do case $op in "
        "+) all=\"$all -$group\" ;; "
        "*) rest=; for other in $all; do [ \"$other\" = \"-$group\" ] || rest=\"$rest $other\"; done; all=$rest ;; "
        "esac; done; "
        "[ -z \"$all\" ] || kill -s KILL -- $all 2>/dev/null";
    int end[2];
    *g = (SandboxGuard){.file = -1};
    if (!process_pipe(end, e)) return false;
    const bool ok = process_spawn(&g->pid, guard, 0, end[0], -1, environ, e);
    close(end[0]);
    if (ok) g->file = end[1];
    else close(end[1]);
    return ok;
}

/* Writes a line about a process group. Makes only system calls, so that a child of vfork() may call it. */
static inline void sandbox_guard_tell(int file, char op, pid_t group) {
    char line[24], *at = line + sizeof line;
    if (file < 0) return;
    *--at = '\n';
    for (; group > 0; group /= 10) *--at = (char)('0' + group % 10);
    *--at = ' ';
    *--at = op;
    while (write(file, at, (size_t)(line + sizeof line - at)) < 0 && errno == EINTR) {}
}

/* Ends the guard. */
static inline void sandbox_guard_close(SandboxGuard *g) {
    if (g->pid) close(g->file);
    while (g->pid && waitpid(g->pid, NULL, 0) < 0 && errno == EINTR) {}
    *g = (SandboxGuard){.file = -1};
}

#endif
