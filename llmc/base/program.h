/* program.h - what every program does around its work: signals, time, memory, the tables it prints at start.
 *
 * program_start() makes a broken pipe an error of write() instead of a silent death, and SIGINT and SIGTERM a request: the
 * loop asks program_stopping() once a step, saves its state and ends with status 0. A second signal, a second or more
 * later, ends at once.
 */
#ifndef LLMC_BASE_PROGRAM_H
#define LLMC_BASE_PROGRAM_H

#include "error.h"
#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* Seconds on a clock that only runs forward. */
static inline double program_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline volatile sig_atomic_t *program_signal(void) {
    static volatile sig_atomic_t received;
    return &received;
}

/* A second signal ends the program, but not one within PROGRAM_GRACE seconds of the first: timeout(1) signals its child and
 * then its process group, so that the child gets the same signal twice. The second signal of a person comes later. */
static const double PROGRAM_GRACE = 1;

static inline void program_on_signal(int number) {
    static volatile double first;
    volatile sig_atomic_t *received = program_signal();
    const double now = program_seconds();
    if (*received && now - first >= PROGRAM_GRACE) _exit(128 + number);
    if (!*received) first = now;
    *received = number;
}

/* The handler has a stack of its own: a signal's frame on the stack of oneDNN's generated code, which seems to keep values
 * beyond the stack pointer, left a damaged heap behind in one interrupted run of ten. */
static inline void program_start(void) {
    static char aside[1 << 16];
    const stack_t stack = {.ss_sp = aside, .ss_size = sizeof aside};
    sigaltstack(&stack, NULL);
    struct sigaction stop = {.sa_handler = program_on_signal}, ignore = {.sa_handler = SIG_IGN};
    stop.sa_flags = SA_RESTART | SA_ONSTACK;
    sigemptyset(&stop.sa_mask), sigemptyset(&ignore.sa_mask);
    sigaction(SIGINT, &stop, NULL), sigaction(SIGTERM, &stop, NULL), sigaction(SIGPIPE, &ignore, NULL);
}

static inline bool program_stopping(void) { return *program_signal() != 0; }

/* The most memory this process has had resident, in bytes. */
static inline size_t program_peak_memory(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) ? 0 : (size_t)usage.ru_maxrss * 1024;
}

/* "1.6 GB" */
static inline const char *program_bytes(char text[16], size_t bytes) {
    const char *unit[] = {"B", "kB", "MB", "GB", "TB"};
    double value = (double)bytes;
    int u = 0;
    while (value >= 1000 && u < 4) value /= 1000, u++;
    snprintf(text, 16, u ? "%.1f %s" : "%.0f %s", value, unit[u]);
    return text;
}

#endif
