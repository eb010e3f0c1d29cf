/* error.h - how this project reports what went wrong.
 *
 * A library function that can fail takes an `Error *` and returns false (or NULL) after error_set() has written one
 * full sentence into it; it never prints and never exits. Only the programs' main files call die() or usage_error().
 * A message reads `object: what was found, what was expected[; what to do]`, one line, lower case; die() puts the
 * program's name before it.
 *
 *     Error e;
 *     if (!shard_open(&shard, path, &e)) die("%s", e.text);
 *
 * Exit status: 0 all is well, 1 a failure, 2 the command line was wrong. Running out of host memory is always fatal.
 *
 * Where several ranks run (dist.h), they mostly fail of the same cause: rank 0 speaks for all. Another rank keeps warnings
 * and wrong command lines to itself, and speaks of a failure, with its number, if it is still there five seconds later.
 */
#ifndef LLMC_BASE_ERROR_H
#define LLMC_BASE_ERROR_H

#include "launch.h"
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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
        if (*c == '\n') *c = ' '; /* one line, whatever a library's own message holds */
    return false;
}

/* One line on standard error: the program's name, `kind`, the message, `tail`. Line ends inside the message (a user's own
 * words may hold them) become spaces. */
static inline void error_print(const char *kind, const char *tail, const char *format, va_list args) {
    Error e;
    vsnprintf(e.text, sizeof e.text, format, args);
    for (char *c = e.text; *c; c++)
        if (*c == '\n') *c = ' ';
    fflush(stdout);
    fprintf(stderr, "%s: %s%s%s\n", program_invocation_short_name, kind, e.text, tail);
}

PRINTF_LIKE(1, 2) static inline void warn(const char *format, ...) {
    va_list args;
    if (launch_of_environment().rank) return;
    va_start(args, format);
    error_print("warning: ", "", format, args);
    va_end(args);
}

PRINTF_LIKE(1, 2) static inline NORETURN void die(const char *format, ...) {
    va_list args;
    char rank[32] = "";
    const Launch l = launch_of_environment();
    if (l.rank) {
        const struct timespec grace = {.tv_sec = 5, .tv_nsec = 0}; /* mpirun ends the others within two */
        if (nanosleep(&grace, NULL)) exit(1); /* a signal: the launcher ends the run, rank 0 has spoken */
        snprintf(rank, sizeof rank, "rank %d: ", l.rank);
    }
    va_start(args, format);
    error_print(rank, "", format, args);
    va_end(args);
    exit(1);
}

PRINTF_LIKE(1, 2) static inline NORETURN void usage_error(const char *format, ...) {
    char tail[128];
    if (launch_of_environment().rank) exit(2);
    snprintf(tail, sizeof tail, "; see %s --help", program_invocation_short_name);
    va_list args;
    va_start(args, format);
    error_print("", tail, format, args);
    va_end(args);
    exit(2);
}

/* a * b, or false when the product does not fit: sizes that come from a file or an option are multiplied only so. */
static inline bool size_multiply(size_t a, size_t b, size_t *product) { return !__builtin_mul_overflow(a, b, product); }

static inline void *checked(void *memory, size_t bytes) {
    if (!memory) die("out of memory: %zu bytes were asked for", bytes);
    return memory;
}

/* count * size bytes, zeroed. */
static inline void *xcalloc(size_t count, size_t size) {
    return checked(calloc(count ? count : 1, size ? size : 1), count * size);
}

static inline void *xmalloc(size_t bytes) { return checked(malloc(bytes ? bytes : 1), bytes); }

/* Grows or shrinks to count * size bytes. */
static inline void *xrealloc(void *memory, size_t count, size_t size) {
    size_t bytes;
    if (!size_multiply(count, size, &bytes)) die("out of memory: %zu times %zu bytes were asked for", count, size);
    return checked(realloc(memory, bytes ? bytes : 1), bytes);
}

/* The first n bytes of s with a closing NUL. */
static inline char *xstrndup(const char *s, size_t n) {
    char *copy = (char *)xmalloc(n + 1);
    memcpy(copy, s, n);
    copy[n] = 0;
    return copy;
}

static inline char *xstrdup(const char *s) { return xstrndup(s, strlen(s)); }

#endif
