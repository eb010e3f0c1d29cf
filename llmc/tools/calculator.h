/* calculator.h - the tool `calculator`: arithmetic in exact fractions, by GMP.
 *
 *   sum       = product { (`+` | `-`) product }
 *   product   = sign { (`*` | `/` | `//` | `%`) sign }      // rounds down, and % has the sign of the divisor, as in Python
 *   sign      = (`-` | `+`) sign | power
 *   power     = atom [ `**` sign ]                          -2**2 is -4, 2**3**2 is 512
 *   atom      = digits [`.` digits] | `(` sum `)`
 *
 * White space may be anywhere but in numbers and operators. The result is a whole number, or a decimal if that ends
 * after at most 20 places, else the decimal of 15 significant digits that is nearest.
 *
 * Limits: 256 bytes of text, parentheses and signs nest at most 64 deep, an exponent is a whole number of at most 4
 * digits, and no value has more than 1,000 digits (verify_rational.h).
 *
 *     TextBuffer result = {0};
 *     if (calculator("1/3 + 0.5", 9, &result)) puts(result.text);                  // 0.833333333333333
 *     else fprintf(stderr, "%s\n", result.text);                                     // such as: division by zero
 *     text_free(&result);
 */
#ifndef LLMC_TOOLS_CALCULATOR_H
#define LLMC_TOOLS_CALCULATOR_H

#include "../base/text.h"              /* text_string, text_append, TextBuffer, text_format, ... */
#include "../reward/verify_rational.h" /* gmp, rational_clear, rational_init, VERIFY_NUMBER_SIZE, ... */
#include <stdlib.h>

enum { CALCULATOR_BYTES = 256, CALCULATOR_DEPTH = 64, CALCULATOR_PLACES = 20, CALCULATOR_DIGITS = 15 };

typedef struct Calculator {
    const char *text;
    size_t n, at;
    int depth;
    TextBuffer *error; /* set by the first failure */
} Calculator;

static inline bool calculator_fail(Calculator *c, const char *what) {
    if (!c->error->length) text_string(c->error, what);
    return false;
}

static inline bool calculator_syntax(Calculator *c) {
    if (c->error->length) return false;
    if (c->at >= c->n) text_string(c->error, "syntax: the expression ends too early");
    else text_format(c->error, "syntax: unexpected character at byte %zu", c->at);
    return false;
}

/* Moves past an operator, if it is the next one. */
static inline bool calculator_take(Calculator *c, const char *operator) {
    const size_t length = strlen(operator);
    while (c->at < c->n && strchr(" \t\r\n", c->text[c->at]) && c->text[c->at]) c->at++;
    if (c->n - c->at < length || memcmp(c->text + c->at, operator, length)) return false;
    c->at += length;
    return true;
}

static inline bool calculator_sum(Calculator *c, mpq_ptr x);

static inline size_t calculator_digits(const Calculator *c, size_t from) {
    while (from < c->n && c->text[from] >= '0' && c->text[from] <= '9') from++;
    return from;
}

/* digits [. digits] */
static inline bool calculator_number(Calculator *c, mpq_ptr x) {
    char digits[CALCULATOR_BYTES];
    const size_t whole = calculator_digits(c, c->at);
    size_t end = whole, n = whole - c->at;
    memcpy(digits, c->text + c->at, n);
    if (whole < c->n && c->text[whole] == '.') {
        end = calculator_digits(c, whole + 1);
        memcpy(digits + n, c->text + whole + 1, end - whole - 1);
        n += end - whole - 1;
    }
    if (!n) return calculator_syntax(c);
    c->at = end;
    return (rational_digits(x, digits, n) && rational_scale(x, end > whole ? -(long)(end - whole - 1) : 0)) ||
           calculator_fail(c, "the number is too long");
}

static inline bool calculator_atom(Calculator *c, mpq_ptr x) {
    if (!calculator_take(c, "(")) return calculator_number(c, x);
    if (++c->depth > CALCULATOR_DEPTH) return calculator_fail(c, "the expression is nested too deeply");
    if (!calculator_sum(c, x) || !calculator_take(c, ")")) return calculator_syntax(c);
    c->depth--;
    return true;
}

static inline bool calculator_sign(Calculator *c, mpq_ptr x);

static inline bool calculator_power(Calculator *c, mpq_ptr x) {
    if (!calculator_atom(c, x)) return false;
    if (!calculator_take(c, "**")) return true;
    mpq_t exponent;
    char text[VERIFY_NUMBER_SIZE];
    rational_init(exponent);
    bool ok = calculator_sign(c, exponent);
    if (ok && (!rational_is_whole(exponent) || !rational_print(exponent, text) || labs(strtol(text, NULL, 10)) > 9999))
        ok = calculator_fail(c, "an exponent must be a whole number of at most 4 digits");
    if (ok && !mpq_sgn(x) && mpq_sgn(exponent) < 0) ok = calculator_fail(c, "division by zero");
    if (ok && !rational_power(x, strtol(text, NULL, 10))) ok = calculator_fail(c, "the result is too large");
    rational_clear(exponent);
    return ok;
}

static inline bool calculator_sign(Calculator *c, mpq_ptr x) {
    if (++c->depth > CALCULATOR_DEPTH) return calculator_fail(c, "the expression is nested too deeply");
    const bool minus = calculator_take(c, "-");
    if (!(minus || calculator_take(c, "+") ? calculator_sign(c, x) : calculator_power(c, x))) return false;
    if (minus) rational_negate(x);
    c->depth--;
    return true;
}

/* x = floor(x) */
static inline void calculator_floor(mpq_ptr x) {
    gmp()->floor_div(mpq_numref(x), mpq_numref(x), mpq_denref(x));
    gmp()->set_ui(mpq_denref(x), 1);
}

/* x = x op y, where op is one of * / d (floor of the quotient) % + - */
static inline bool calculator_operate(Calculator *c, mpq_ptr x, char op, mpq_srcptr y) {
    if (strchr("/d%", op) && !mpq_sgn(y)) return calculator_fail(c, "division by zero");
    if (op == '%') { /* x - y floor(x / y) */
        mpq_t quotient;
        rational_init(quotient);
        gmp()->div(quotient, x, y);
        calculator_floor(quotient);
        gmp()->mul(quotient, quotient, y);
        gmp()->sub(x, x, quotient);
        rational_clear(quotient);
    } else (op == '*' ? gmp()->mul : op == '+' ? gmp()->add : op == '-' ? gmp()->sub : gmp()->div)(x, x, y);
    if (op == 'd') calculator_floor(x);
    return rational_fits(x) || calculator_fail(c, "the result is too large");
}

/* Reads the operand after an operator and applies it to x. */
static inline bool calculator_operand(Calculator *c, mpq_ptr x, char op, bool (*read)(Calculator *, mpq_ptr)) {
    mpq_t y;
    rational_init(y);
    const bool ok = read(c, y) && calculator_operate(c, x, op, y);
    rational_clear(y);
    return ok;
}

static inline bool calculator_product(Calculator *c, mpq_ptr x) {
    if (!calculator_sign(c, x)) return false;
    for (;;) {
        char op;
        if (calculator_take(c, "//")) op = 'd';
        else if (calculator_take(c, "*")) op = '*';
        else if (calculator_take(c, "/")) op = '/';
        else if (calculator_take(c, "%")) op = '%';
        else return true;
        if (!calculator_operand(c, x, op, calculator_sign)) return false;
    }
}

static inline bool calculator_sum(Calculator *c, mpq_ptr x) {
    if (!calculator_product(c, x)) return false;
    for (;;) {
        const char op = calculator_take(c, "+") ? '+' : calculator_take(c, "-") ? '-' : 0;
        if (!op) return true;
        if (!calculator_operand(c, x, op, calculator_product)) return false;
    }
}

/* Writes x, which is not a short decimal, with 15 significant digits as printf's %.15g does. */
static inline void calculator_print_rounded(mpq_ptr x, TextBuffer *out) {
    const bool negative = mpq_sgn(x) < 0;
    mpq_t scaled, half;
    char digits[VERIFY_NUMBER_SIZE];
    if (negative) rational_negate(x);
    /* |x| is near 10^exponent: the digits of x 10^(14 - exponent), rounded, are 15 or one more or less */
    long exponent = (long)gmp()->sizeinbase(mpq_numref(x), 10) - (long)gmp()->sizeinbase(mpq_denref(x), 10);
    rational_init(scaled);
    rational_init(half);
    gmp()->set_ui(mpq_numref(half), 1);
    gmp()->set_ui(mpq_denref(half), 2);
    for (int tries = 0; tries < 4; tries++) {
        gmp()->set(scaled, x);
        rational_scale(scaled, CALCULATOR_DIGITS - 1 - exponent);
        gmp()->add(scaled, scaled, half);
        calculator_floor(scaled);
        gmp()->get_str(digits, 10, mpq_numref(scaled));
        const long length = (long)strlen(digits);
        if (length == CALCULATOR_DIGITS) break;
        exponent += length < CALCULATOR_DIGITS ? -1 : 1;
    }
    rational_clear(scaled);
    rational_clear(half);
    size_t n = strlen(digits);
    while (n > 1 && digits[n - 1] == '0') n--;
    if (negative) text_string(out, "-");
    if (exponent < -4 || exponent >= CALCULATOR_DIGITS) {
        text_append(out, digits, 1);
        if (n > 1) text_string(out, ".");
        text_append(out, digits + 1, n - 1);
        text_format(out, "e%+03ld", exponent);
    } else if (exponent < 0) {
        text_format(out, "0.%.*s", (int)(-exponent - 1), "000");
        text_append(out, digits, n);
    } else {
        const size_t whole = (size_t)exponent + 1;
        text_append(out, digits, whole);
        if (n > whole) text_string(out, ".");
        if (n > whole) text_append(out, digits + whole, n - whole);
    }
}

/* Writes the value of an expression to *out. */
static inline void calculator_print(mpq_ptr x, TextBuffer *out) {
    char text[VERIFY_NUMBER_SIZE];
    rational_print(x, text);
    const char *point = strchr(text, '.');
    if (!strchr(text, '/') && (!point || strlen(point + 1) <= CALCULATOR_PLACES)) text_string(out, text);
    else calculator_print_rounded(x, out);
}

/* Computes the value of the expression text[0..n) and writes it to *result; returns false with the reason in *result if
 * it has none. GMP must be available (rational_available). */
static inline bool calculator(const char *text, size_t n, TextBuffer *result) {
    Calculator c = {.text = text, .n = n, .error = result};
    mpq_t x;
    text_clear(result);
    if (n > CALCULATOR_BYTES) {
        text_format(result, "the expression has more than %d bytes", CALCULATOR_BYTES);
        return false;
    }
    rational_init(x);
    bool ok = calculator_sum(&c, x);
    if (ok) calculator_take(&c, "");
    if (ok && c.at < c.n) ok = calculator_syntax(&c);
    if (ok) calculator_print(x, result);
    rational_clear(x);
    return ok;
}

#endif
