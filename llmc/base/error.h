/* error.h - error reporting.
 *
 * A library function that can fail takes an `Error *` and returns false (or NULL) after error_set() has written one
 * full sentence into it. It does not print and does not exit: only the programs, train/, rollout/inference.h, options.h
 * and program.h call die(), usage_error() or exit(), and dist/ ends all ranks after a failed collective. Running out of
 * host memory is the exception and ends the program from anywhere, through the allocators below. A message has the form
 * `object: what was found, what was expected[; what to do]`, on one line, in lower case; die() prefixes the program's
 * name.
 *
 *     Error e;
 *     if (!shard_open(&shard, path, &e)) die("%s", e.text);        // records/shard.h
 *
 * Exit status: 0 success, 1 failure, 2 bad command line.
 *
 * With several ranks (dist.h), usually all ranks fail for the same reason, so only rank 0 prints. The other ranks print
 * no warnings. They print a failure or a usage error, with the rank's number, only if they are still running
 * five seconds later.
 */
#ifndef LLMC_BASE_ERROR_H
#define LLMC_BASE_ERROR_H

#include "launch.h" /* launch_of_environment, Launch */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* "s" unless n is 1, for messages with a count. */
#define PLURAL(n) ((n) == 1 ? "" : "s")

#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))
#define NORETURN                 __attribute__((noreturn))

typedef struct Error {
    char text[1024];
} Error;

/* Writes the message and returns false, so that a caller may `return error_set(e, ...)`. A NULL `e` is allowed. */
PRINTF_LIKE(2, 3) static inline bool error_set(Error *e, const char *format, ...) {
    if (!e) return false;
    va_list args;
    va_start(args, format);
    vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    for (char *c = e->text; *c; c++)
        if (*c == '\n') *c = ' '; /* one line, even if a library's message has several */
    return false;
}

/* A warning of this process, and how often it was printed. */
typedef struct WarningCount {
    char *text;
    size_t times;
} WarningCount;

/* The distinct warnings of this process in the order of their first appearance, for the record of a run. */
typedef struct WarningList {
    WarningCount *warnings;
    size_t count;
    size_t further; /* printed after WARNINGS_MOST distinct ones, which are not kept */
} WarningList;

enum { WARNINGS_MOST = 100 };

static inline WarningList *warning_list(void) {
    static WarningList list;
    return &list;
}

/* Adds a warning to the list. Threads must not call it, or warn(), at the same time. */
static inline void warning_keep(const char *text) {
    WarningList *list = warning_list();
    for (size_t i = 0; i < list->count; i++)
        if (!strcmp(list->warnings[i].text, text)) {
            list->warnings[i].times++;
            return;
        }
    WarningCount *more =
        list->count < WARNINGS_MOST ? (WarningCount *)realloc(list->warnings, (list->count + 1) * sizeof *more) : NULL;
    char *copy = more ? strdup(text) : NULL;
    if (more) list->warnings = more;
    if (!copy) {
        list->further++;
        return;
    }
    list->warnings[list->count].text = copy;
    list->warnings[list->count++].times = 1;
}

/* The message that ended the program, for what runs at its exit; "" as long as it has not failed. */
static inline Error *error_last(void) {
    static Error last;
    return &last;
}

/* Prints one line to standard error: the program's name, `kind`, the message, `tail`. Newlines inside the message, for
 * example from a user's argument, become spaces. Returns the message. */
static inline Error error_print(const char *kind, const char *tail, const char *format, va_list args) {
    Error e;
    vsnprintf(e.text, sizeof e.text, format, args);
    for (char *c = e.text; *c; c++)
        if (*c == '\n') *c = ' ';
    fflush(stdout);
    fprintf(stderr, "%s: %s%s%s\n", program_invocation_short_name, kind, e.text, tail);
    return e;
}

PRINTF_LIKE(1, 2) static inline void warn(const char *format, ...) {
    va_list args;
    if (launch_of_environment().rank) return;
    va_start(args, format);
    const Error e = error_print("warning: ", "", format, args);
    va_end(args);
    warning_keep(e.text);
}

/* Waits, on every rank but 0, until rank 0 must have printed the same error and the launcher have ended this rank. Writes
 * "rank N: " for the message of a rank that still runs. */
static inline void error_rank(char rank[32], int status) {
    const Launch l = launch_of_environment();
    rank[0] = 0;
    if (!l.rank) return;
    const struct timespec grace = {.tv_sec = 5, .tv_nsec = 0}; /* mpirun ends the other ranks within two */
    if (nanosleep(&grace, NULL)) exit(status); /* interrupted by a signal of the launcher, which is ending the run */
    snprintf(rank, 32, "rank %d: ", l.rank);
}

PRINTF_LIKE(1, 2) static inline NORETURN void die(const char *format, ...) {
    va_list args;
    char rank[32];
    error_rank(rank, 1);
    va_start(args, format);
    *error_last() = error_print(rank, "", format, args);
    va_end(args);
    exit(1);
}

PRINTF_LIKE(1, 2) static inline NORETURN void usage_error(const char *format, ...) {
    char tail[128], rank[32];
    error_rank(rank, 2);
    snprintf(tail, sizeof tail, "; see %s --help", program_invocation_short_name);
    va_list args;
    va_start(args, format);
    error_print(rank, tail, format, args);
    va_end(args);
    exit(2);
}

/* Computes a * b; false on overflow. Sizes from a file or an option are always multiplied with this. */
static inline bool size_multiply(size_t a, size_t b, size_t *product) { return !__builtin_mul_overflow(a, b, product); }

static inline void *checked(void *memory, size_t bytes) {
    if (!memory) die("out of memory: cannot allocate %zu bytes", bytes);
    return memory;
}

/* Like checked(), for an object that a library allocated, whose size is unknown. what: the object's name with its
 * article, for the message. */
static inline void *checked_object(void *object, const char *what) {
    if (!object) die("out of memory: cannot allocate %s", what);
    return object;
}

/* Allocates count * size zeroed bytes. */
static inline void *xcalloc(size_t count, size_t size) {
    return checked(calloc(count ? count : 1, size ? size : 1), count * size);
}

static inline void *xmalloc(size_t bytes) { return checked(malloc(bytes ? bytes : 1), bytes); }

/* Resizes to count * size bytes. */
static inline void *xrealloc(void *memory, size_t count, size_t size) {
    size_t bytes;
    if (!size_multiply(count, size, &bytes)) die("out of memory: cannot allocate %zu times %zu bytes", count, size);
    return checked(realloc(memory, bytes ? bytes : 1), bytes);
}

/* Copies the first n bytes of s and appends a NUL. */
static inline char *xstrndup(const char *s, size_t n) {
    char *copy = (char *)xmalloc(n + 1);
    memcpy(copy, s, n);
    copy[n] = 0;
    return copy;
}

static inline char *xstrdup(const char *s) { return xstrndup(s, strlen(s)); }

#endif
