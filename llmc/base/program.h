/* program.h - process utilities for all programs: signals, memory, and the name of the processor.
 *
 * After program_start(), writing to a broken pipe is an error of write(), and these signals are requests to stop: the
 * training loop checks program_stopping() once per step, saves its state and exits with status 0.
 *
 *   INT, TERM      Ctrl-C, kill, timeout, mpirun, Slurm's end of a job
 *   HUP            the terminal was closed; ignored if it was ignored at the start, as nohup does
 *   USR1, USR2     a scheduler's warning before the end of a job (sbatch --signal=USR1@60)
 *   XCPU, XFSZ     a limit on processor time, or on the size of a file, whose write() fails as well
 *   PWR            the power supply fails
 *
 * INT or TERM, one second or more after the first of these signals, exits immediately. The others never do: the system
 * repeats XCPU every second and XFSZ at every write. QUIT (Ctrl-\) keeps its default: it ends the program at once.
 *
 * A file that becomes shorter while it is mapped (map.h) ends the program with one line and status 1.
 */
#ifndef LLMC_BASE_PROGRAM_H
#define LLMC_BASE_PROGRAM_H

#include "clock.h" /* clock_seconds */
#include "map.h"   /* Mapping, mapping_at */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

static inline volatile sig_atomic_t *program_signal(void) {
    static volatile sig_atomic_t received;
    return &received;
}

/* A second INT or TERM ends the program, but not one within PROGRAM_GRACE seconds of the first signal: timeout(1) signals
 * its child and then its process group, so that the child gets the same signal twice. A second signal from a person
 * comes later. */
static const double PROGRAM_GRACE = 1;

static inline void program_on_signal(int number) {
    static volatile double first;
    volatile sig_atomic_t *received = program_signal();
    const double now = clock_seconds();
    const bool urgent = number == SIGINT || number == SIGTERM;
    if (*received && urgent && now - first >= PROGRAM_GRACE) _exit(128 + number);
    if (!*received) first = now;
    if (!*received || urgent) *received = number;
}

/* The handler of SIGBUS: a read beyond the end of a mapped file. Any other cause ends the program by the signal. */
static inline void program_on_bus_error(int number, siginfo_t *about, void *context) {
    static const char text[] = ": the file has become shorter, or cannot be read, while it is in use\n";
    const Mapping *m = mapping_at(about->si_addr);
    (void)context;
    if (!m) {
        signal(number, SIG_DFL);
        return;
    }
    const char *part[] = {program_invocation_short_name, ": ", m->name, text};
    for (int i = 0; i < 4; i++)
        if (write(STDERR_FILENO, part[i], strlen(part[i])) < 0) break;
    _exit(1);
}

/* Has program_on_signal() called at a signal. `flags` is SA_RESTART, or 0 if a read that waits is to end. The handler runs on
 * the stack of program_start(). oneDNN's generated code keeps values beyond the stack pointer: with the signal's frame on the
 * same stack, one interrupted run in ten ended with a corrupted heap. */
static inline void program_catch(int number, int flags) {
    struct sigaction stop = {.sa_handler = program_on_signal, .sa_flags = flags | SA_ONSTACK};
    sigemptyset(&stop.sa_mask);
    sigaction(number, &stop, NULL);
}

/* Notes signals that ask a program to end, and ignores SIGPIPE. Called once, by the main thread. */
static inline void program_start(void) {
    static char aside[1 << 16];
    const stack_t stack = {.ss_sp = aside, .ss_size = sizeof aside};
    sigaltstack(&stack, NULL);
    static const int stops[] = {SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ, SIGPWR};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) program_catch(stops[i], SA_RESTART);
    struct sigaction hangup;
    if (!sigaction(SIGHUP, NULL, &hangup) && hangup.sa_handler != SIG_IGN) program_catch(SIGHUP, SA_RESTART);
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigemptyset(&ignore.sa_mask);
    sigaction(SIGPIPE, &ignore, NULL);
    struct sigaction bus = {.sa_sigaction = program_on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&bus.sa_mask);
    sigaction(SIGBUS, &bus, NULL);
}

static inline bool program_stopping(void) { return *program_signal() != 0; }

/* Peak resident memory of this process in bytes. */
static inline size_t program_peak_memory(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) ? 0 : (size_t)usage.ru_maxrss * 1024;
}

/* The process's memory now, in bytes; 0 if it is not known. */
static inline size_t program_memory(void) {
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%*s %ld", &pages) != 1) pages = 0;
    if (f) fclose(f);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* Formats a size, such as "1.6 GB". */
static inline const char *program_bytes(char text[16], double bytes) {
    const char *unit[] = {"B", "kB", "MB", "GB", "TB"};
    int u = 0;
    for (; bytes >= 1000 && u < 4; u++) bytes /= 1000;
    snprintf(text, 16, u ? "%.1f %s" : "%.0f %s", bytes, unit[u]);
    return text;
}

/* The processor's name as the system has it, at most size - 1 bytes, or "unknown". */
static inline const char *program_processor(char *name, size_t size) {
    char line[512], model[256] = "unknown";
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %255[^\n]", model) == 1) break;
    if (f) fclose(f);
    snprintf(name, size, "%.*s", (int)size - 1, model);
    return name;
}

#endif
