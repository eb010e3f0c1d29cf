/* verify_rational.h - exact rational numbers, by GMP.
 *
 * GMP's types and macros come from <gmp.h>; its functions are found in libgmp.so.10 when the first number is read, so a
 * program that reads none does not need the library. The environment variable LLMC_GMP_LIBRARY names another file.
 * Without the library nothing can be compared: numbers are then unreadable, checks of numbers give NaN, and
 * rational_available() has the reason.
 *
 * Limits: a number whose numerator or denominator has more than VERIFY_DIGITS digits is no number.
 *
 *     mpq_t half;
 *     if (!rational_available(&e)) die("%s", e.text);
 *     rational_init(half);
 *     char text[VERIFY_NUMBER_SIZE];
 *     if (rational_digits(half, "2", 1) && rational_invert(half) && rational_print(half, text)) puts(text);     // 0.5
 *     rational_clear(half);
 */
#ifndef LLMC_REWARD_VERIFY_RATIONAL_H
#define LLMC_REWARD_VERIFY_RATIONAL_H

#include "../base/error.h"   /* Error, error_set */
#include "../base/library.h" /* Library, library_open */
#include <dlfcn.h>
#include <gmp.h>
#include <pthread.h>

enum {
    VERIFY_DIGITS = 1000,                        /* maximum number of digits of a numerator or a denominator */
    VERIFY_NUMBER_SIZE = 2 * VERIFY_DIGITS + 16, /* bytes of a canonical number with its NUL */
};

/* The functions of GMP that are used here; see its manual, chapters 5 and 6. */
typedef struct Gmp {
    void (*init)(mpq_ptr);
    void (*clear)(mpq_ptr);
    void (*set)(mpq_ptr, mpq_srcptr);
    void (*canonicalize)(mpq_ptr);
    void (*add)(mpq_ptr, mpq_srcptr, mpq_srcptr);
    void (*sub)(mpq_ptr, mpq_srcptr, mpq_srcptr);
    void (*mul)(mpq_ptr, mpq_srcptr, mpq_srcptr);
    void (*div)(mpq_ptr, mpq_srcptr, mpq_srcptr);
    int (*equal)(mpq_srcptr, mpq_srcptr);
    int (*compare)(mpq_srcptr, mpq_srcptr);
    int (*set_str)(mpz_ptr, const char *, int);
    char *(*get_str)(char *, int, mpz_srcptr);
    size_t (*sizeinbase)(mpz_srcptr, int);
    void (*set_ui)(mpz_ptr, unsigned long);
    void (*pow_ui)(mpz_ptr, mpz_srcptr, unsigned long);
    void (*ui_pow_ui)(mpz_ptr, unsigned long, unsigned long);
    void (*z_mul)(mpz_ptr, mpz_srcptr, mpz_srcptr);
    void (*divexact)(mpz_ptr, mpz_srcptr, mpz_srcptr);
    unsigned long (*remove)(mpz_ptr, mpz_srcptr, mpz_srcptr);
    void (*swap)(mpz_ptr, mpz_ptr);
    void (*floor_div)(mpz_ptr, mpz_srcptr, mpz_srcptr);
} Gmp;

typedef struct GmpLibrary {
    pthread_once_t once;
    bool open;
    Gmp table;
    Error why; /* it cannot be opened */
} GmpLibrary;

static inline GmpLibrary *gmp_library(void) {
    static GmpLibrary library = {.once = PTHREAD_ONCE_INIT};
    return &library;
}

static inline void gmp_open(void) {
    static const char *const names[] = {"init",       "clear",  "set",    "canonicalize", "add",     "sub",
                                        "mul",        "div",    "equal",  "cmp",          "set_str", "get_str",
                                        "sizeinbase", "set_ui", "pow_ui", "ui_pow_ui",    "mul",     "divexact",
                                        "remove",     "swap",   "fdiv_q"};
    enum { RATIONAL = 10 }; /* the first functions are of rationals (mpq), the others of integers (mpz) */
    Library l;
    GmpLibrary *g = gmp_library();
    g->open = library_open(&l, "libgmp.so.10", "LLMC_GMP_LIBRARY", RTLD_LOCAL,
                           "numbers are compared by GMP; install the package libgmp10", &g->why);
    for (size_t i = 0; g->open && i < sizeof names / sizeof *names; i++) {
        char name[40];
        snprintf(name, sizeof name, "__gmp%c_%s", i < RATIONAL ? 'q' : 'z', names[i]);
        void *found = dlsym(l.handle, name);
        if (!found) g->open = error_set(&g->why, "%s: has no function %s; install the package libgmp10", l.path, name);
        memcpy((char *)&g->table + i * sizeof found, &found, sizeof found);
    }
}

/* The functions, or NULL with the reason in *e (which may be NULL) if the library cannot be opened. Any thread may call
 * it. */
static inline const Gmp *rational_gmp(Error *e) {
    GmpLibrary *g = gmp_library();
    pthread_once(&g->once, gmp_open);
    if (!g->open && e) *e = g->why;
    return g->open ? &g->table : NULL;
}

static inline bool rational_available(Error *e) { return rational_gmp(e) != NULL; }

/* The functions, where it is known that the library is open. */
static inline const Gmp *gmp(void) { return rational_gmp(NULL); }

static inline void rational_init(mpq_ptr x) { gmp()->init(x); }
static inline void rational_clear(mpq_ptr x) { gmp()->clear(x); }

static inline bool rational_is_whole(mpq_srcptr x) {
    return mpq_denref(x)->_mp_size == 1 && mpq_denref(x)->_mp_d[0] == 1;
}

/* Whether x is within the limits. */
static inline bool rational_fits(mpq_srcptr x) {
    return gmp()->sizeinbase(mpq_numref(x), 10) <= VERIFY_DIGITS + 1 &&
           gmp()->sizeinbase(mpq_denref(x), 10) <= VERIFY_DIGITS + 1;
}

/* x = the whole number with the n decimal digits; false if there are none or too many. */
static inline bool rational_digits(mpq_ptr x, const char *digits, size_t n) {
    char text[VERIFY_DIGITS + 1];
    while (n > 1 && *digits == '0') {
        digits++;
        n--;
    }
    if (!n || n > VERIFY_DIGITS) return false;
    memcpy(text, digits, n);
    text[n] = 0;
    gmp()->set_ui(mpq_denref(x), 1);
    return !gmp()->set_str(mpq_numref(x), text, 10);
}

static inline void rational_whole(mpq_ptr x, unsigned long value) {
    gmp()->set_ui(mpq_numref(x), value);
    gmp()->set_ui(mpq_denref(x), 1);
}

static inline void rational_negate(mpq_ptr x) { mpq_numref(x)->_mp_size = -mpq_numref(x)->_mp_size; }

/* x = 1 / x; false for 0. */
static inline bool rational_invert(mpq_ptr x) {
    const int sign = mpq_sgn(x);
    if (!sign) return false;
    if (sign < 0) rational_negate(x);
    gmp()->swap(mpq_numref(x), mpq_denref(x));
    if (sign < 0) rational_negate(x);
    return true;
}

/* x = x^exponent; false if the result exceeds the limits or is 1/0. */
static inline bool rational_power(mpq_ptr x, long exponent) {
    const unsigned long n = exponent < 0 ? -(unsigned long)exponent : (unsigned long)exponent;
    if (exponent < 0 && !rational_invert(x)) return false;
    const size_t top = gmp()->sizeinbase(mpq_numref(x), 2), bottom = gmp()->sizeinbase(mpq_denref(x), 2);
    const size_t bits = top > bottom ? top : bottom;
    if (bits > 1 && n > 4 * VERIFY_DIGITS / (bits - 1)) return false;
    gmp()->pow_ui(mpq_numref(x), mpq_numref(x), n);
    gmp()->pow_ui(mpq_denref(x), mpq_denref(x), n);
    return rational_fits(x);
}

/* x = x 10^exponent; false if the result exceeds the limits. */
static inline bool rational_scale(mpq_ptr x, long exponent) {
    if (exponent > 2 * VERIFY_DIGITS || exponent < -2 * VERIFY_DIGITS) return false;
    mpq_t power;
    rational_init(power);
    rational_whole(power, 10);
    gmp()->ui_pow_ui(mpq_numref(power), 10, (unsigned long)(exponent < 0 ? -exponent : exponent));
    if (exponent < 0) gmp()->div(x, x, power);
    else gmp()->mul(x, x, power);
    rational_clear(power);
    return rational_fits(x);
}

/* Divides the denominator of x by `prime` as often as possible; returns how often. */
static inline unsigned long rational_take(mpq_ptr x, unsigned long prime) {
    mpq_t factor;
    rational_init(factor);
    rational_whole(factor, prime);
    const unsigned long n = gmp()->remove(mpq_denref(x), mpq_denref(x), mpq_numref(factor));
    rational_clear(factor);
    return n;
}

/* Writes digits / 10^scale, without redundant zeros. */
static inline void rational_print_decimal(const char *digits, size_t n, size_t scale, char *out) {
    if (scale >= n) { /* 0.00digits */
        *out++ = '0';
        *out++ = '.';
        memset(out, '0', scale - n);
        out += scale - n;
        memcpy(out, digits, n);
        out += n;
    } else {
        memcpy(out, digits, n - scale);
        out += n - scale;
        if (scale) *out++ = '.';
        memcpy(out, digits + n - scale, scale);
        out += scale;
    }
    *out = 0;
}

/* Writes x to out[VERIFY_NUMBER_SIZE]: as a decimal without redundant zeros if there is a finite one of at most
 * VERIFY_DIGITS digits, else as p/q in lowest terms. False if x exceeds the limits. */
static inline bool rational_print(mpq_srcptr x, char *out) {
    if (!rational_fits(x)) return false;
    const bool negative = mpq_sgn(x) < 0;
    mpq_t y;
    rational_init(y);
    gmp()->set(y, x);
    if (negative) {
        rational_negate(y);
        *out++ = '-';
    }
    const unsigned long twos = rational_take(y, 2), fives = rational_take(y, 5), scale = twos > fives ? twos : fives;
    bool decimal = rational_is_whole(y);
    if (decimal) {
        mpq_t factor;
        rational_init(factor);
        gmp()->ui_pow_ui(mpq_numref(factor), 2, scale - twos);
        gmp()->z_mul(mpq_numref(y), mpq_numref(y), mpq_numref(factor));
        gmp()->ui_pow_ui(mpq_numref(factor), 5, scale - fives);
        gmp()->z_mul(mpq_numref(y), mpq_numref(y), mpq_numref(factor));
        rational_clear(factor);
        decimal = scale <= VERIFY_DIGITS && gmp()->sizeinbase(mpq_numref(y), 10) <= VERIFY_DIGITS + 1;
    }
    if (decimal) {
        char digits[VERIFY_DIGITS + 8];
        gmp()->get_str(digits, 10, mpq_numref(y));
        rational_print_decimal(digits, strlen(digits), scale, out);
    } else {
        gmp()->set(y, x);
        if (negative) rational_negate(y);
        gmp()->get_str(out, 10, mpq_numref(y));
        out += strlen(out);
        *out++ = '/';
        gmp()->get_str(out, 10, mpq_denref(y));
    }
    rational_clear(y);
    return true;
}

#endif
