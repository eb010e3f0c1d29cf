/* verify_number.h - exact comparison of numbers that are written in many ways.
 *
 *   number     = [sign] [currency] [sign] value [`%` | degree | unit]
 *   value      = mixed | scaled | power | decimal | fraction | `(` number `)`
 *   decimal    = (whole [`.` digits] | `.` digits) [`\overline{` digits `}`] [`e` [`-` | `+`] digits]         also `E`
 *   whole      = digits | digits in groups of three, divided by `,` `{,}` `'` `_` a space or `\,`; 12,34,567; 1.234.567
 *   fraction   = whole [` `] `/` [` `] digits | `\frac` argument argument          (`\frac12`, `\frac{-3}{4}`, `½`)
 *   mixed      = digits proper fraction                                            (`3 1/2`, `3\frac{1}{2}`)
 *   power      = value `^` whole number, `**` too
 *   scaled     = decimal (`\times` | `*` | `x`) power of 10 | decimal (`thousand` | `million` | `billion` | `trillion`)
 *
 * on the text of verify_plain.h. A number that is part of something else is not read: an operand of an expression that
 * has no result (`2*9`, `5-3`), a coefficient (`2\pi`, `3x`), a tuple (`(2,3)`), a ratio (`3:4`), a date, a number in
 * another base (`101_2`), an exponent, or the argument of a root. If the last number of a text is such a part, the text
 * has no number. In a list, commas and spaces separate numbers and a slash does not make a fraction.
 *
 * Which number of a text counts: in `\boxed{}` and in a record's answer the only one, with which there may be words,
 * units and what precedes the last `=`; after `####` the first one, or the result of the expression there; elsewhere
 * the last one.
 *
 * Two numbers are equal if their values are, as exact rationals: `1,234.50` = `1234.5`, `\frac{1}{2}` = `0.5`, `$5` =
 * `5`, `1.5 \times 10^3` = `1500`. `50%` equals both `50` and `0.5`. A fraction is never accepted for a whole number
 * (`84/2` for 42 is an unfinished division, not an answer). Units are not compared, but if both numbers have a unit with
 * an exponent, the exponents must be equal: `5 m^2` = `5` but not `5 m^3`. The record's field `tolerance`, a number,
 * accepts values that differ by at most that much.
 *
 * The record's field `style`: `reversed` = digits are written least significant first, after the sign (125 is written
 * 521), without commas, decimals or exponent (Lee et al. 2023, Teaching Arithmetic to Small Transformers);
 * `scratchpad` = work comes first, only a number after `####` counts.
 *
 * Limits: numerators and denominators have at most 1,000 digits and parentheses nest at most 20 deep. Beyond that a text
 * has no number, which is wrong in a completion and cannot be scored in a record. Without GMP nothing can be scored.
 *
 *     char number[VERIFY_NUMBER_SIZE];
 *     if (verify_number_text(verify_span("It costs $1,234.50."), false, false, number)) puts(number);  // 1234.5
 */
#ifndef LLMC_REWARD_VERIFY_NUMBER_H
#define LLMC_REWARD_VERIFY_NUMBER_H

#include "../base/json_text.h" /* json_number_text */
#include "../base/text.h"      /* TextBuffer, text_free */
#include "verify_answer.h"     /* VerifySpan, verify_digit, verify_letter, verify_starts, ... */
#include "verify_plain.h"      /* PLAIN_TEXT, PLAIN_TEXT_END, verify_plain, PLAIN_CLOSE, ... */
#include "verify_rational.h"   /* gmp, rational_clear, rational_digits, rational_init, ... */
#include <math.h>

enum {
    VERIFY_NESTED = 20,     /* maximum depth of a number's parentheses */
    VERIFY_DISTANCE = 4096, /* maximum number of bytes in a number's braces or parentheses */
};

typedef struct VerifyNumber {
    size_t begin, end;      /* position in the plain text, sign included */
    mpq_t value;            /* see verify_number_new() */
    bool known;             /* false: something that is written with digits, but not a number */
    bool fraction, percent; /* it was written as a fraction; with a percent sign */
    long power;             /* exponent of its unit; 0: none */
    VerifySpan whole;       /* of a number that is digits only: these digits; else empty */
    bool negative;
} VerifyNumber;

static inline void verify_number_new(VerifyNumber *v) {
    *v = (VerifyNumber){0};
    rational_init(v->value);
}

static inline void verify_number_free(VerifyNumber *v) { rational_clear(v->value); }

/* ---- characters ------------------------------------------------------------------------------------------------- */

static inline size_t verify_digits_end(VerifySpan t, size_t i) {
    while (i < t.n && verify_digit(t.s[i])) i++;
    return i;
}

static inline size_t verify_letters_end(VerifySpan t, size_t i) {
    while (i < t.n && verify_letter(t.s[i])) i++;
    return i;
}

/* The character at i, or a newline outside the text. */
static inline char verify_at(VerifySpan t, size_t i) { return i < t.n ? t.s[i] : '\n'; }

/* Whether the character has no meaning between the parts of a number: a space, `$`, or a border of \text{}. */
static inline bool verify_blank(char c) { return c == ' ' || c == '$' || c == PLAIN_TEXT || c == PLAIN_TEXT_END; }

static inline size_t verify_skip(VerifySpan t, size_t i) {
    while (i < t.n && verify_blank(t.s[i])) i++;
    return i;
}

/* The index before which only blanks precede i. */
static inline size_t verify_skip_back(VerifySpan t, size_t i) {
    while (i && verify_blank(t.s[i - 1])) i--;
    return i;
}

/* The index after the brace that closes the one at i, or i if there is none near. */
static inline size_t verify_braces_end(VerifySpan t, size_t i) {
    int open = 0;
    for (size_t j = i; j < t.n && j - i < VERIFY_DISTANCE; j++) {
        open += (t.s[j] == '{') - (t.s[j] == '}');
        if (!open) return j + 1;
    }
    return i;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

/* The end of the groups of three digits that follow the digits [i, j), divided by `separator`, or j. */
static inline size_t verify_groups_end(VerifySpan t, size_t i, size_t j, char separator) {
    const size_t first = j;
    if (j - i > 3) return first;
    while (verify_at(t, j) == separator && verify_digits_end(t, j + 1) == j + 4) j += 4;
    return j;
}

/* The end of the digits at i with their thousands separators. */
static inline size_t verify_whole_end(VerifySpan t, size_t i) {
    const size_t j = verify_digits_end(t, i);
    size_t end;
    if (j == i) return j;
    for (const char *s = ",'_"; *s; s++)
        if ((end = verify_groups_end(t, i, j, *s)) > j) return end;
    if (j - i <= 2) { /* Indian: groups of two, then one of three */
        for (end = j; verify_at(t, end) == ',' && verify_digits_end(t, end + 1) == end + 3;) end += 3;
        if (end > j && verify_at(t, end) == ',' && verify_digits_end(t, end + 1) == end + 4) return end + 4;
    }
    if ((end = verify_groups_end(t, i, j, '.')) > j + 4) return end; /* 1.234.567 */
    if ((end = verify_groups_end(t, i, j, ' ')) > j && (i < 2 || t.s[i - 1] != ' ' || !verify_digit(t.s[i - 2])) &&
        verify_at(t, end) != '/')
        return end;
    return j;
}

/* Reads digits with separators into x. */
static inline bool verify_read_digits(VerifySpan digits, mpq_ptr x) {
    char text[VERIFY_DIGITS + 1];
    size_t n = 0;
    for (size_t i = 0; i < digits.n; i++) {
        if (!verify_digit(digits.s[i])) continue;
        if (n == VERIFY_DIGITS) return false;
        text[n++] = digits.s[i];
    }
    return rational_digits(x, text, n);
}

/* Reads `e` and an exponent at i; returns its end, or i. */
static inline size_t verify_exponent(VerifySpan t, size_t i, long *exponent) {
    size_t k = i + 1;
    if ((verify_at(t, i) | 32) != 'e') return i;
    const bool down = verify_at(t, k) == '-';
    if (down || verify_at(t, k) == '+') k++;
    const size_t end = verify_digits_end(t, k);
    if (end == k) return i;
    for (*exponent = 0; k < end; k++)
        if (*exponent < 100000) *exponent = 10 * *exponent + (t.s[k] - '0');
    if (down) *exponent = -*exponent;
    return end;
}

/* x = x + part / 10^places, or for a repeating part of `places` digits after `before` others, x + part / ((10^places -
 * 1) 10^before). */
static inline bool verify_add_decimals(mpq_ptr x, VerifySpan part, size_t before, bool repeats) {
    mpq_t y, nines;
    rational_init(y), rational_init(nines);
    bool ok = part.n <= VERIFY_DIGITS && before <= VERIFY_DIGITS && verify_read_digits(part, y);
    if (ok && repeats) {
        mpq_t one;
        rational_init(one);
        rational_whole(one, 1);
        gmp()->ui_pow_ui(mpq_numref(nines), 10, part.n);
        gmp()->sub(nines, nines, one);
        gmp()->div(y, y, nines);
        rational_clear(one);
    }
    ok = ok && rational_scale(y, -(long)(repeats ? before : before + part.n));
    if (ok) gmp()->add(x, x, y);
    rational_clear(y), rational_clear(nines);
    return ok && rational_fits(x);
}

/* Reads a decimal at i, with its exponent; v->known is false if it exceeds the limits. In a list, nothing divides
 * groups of digits. Returns its end. */
static inline size_t verify_decimal(VerifySpan t, size_t i, bool list, VerifyNumber *v) {
    const size_t whole = list ? verify_digits_end(t, i) : verify_whole_end(t, i);
    const bool grouped = whole != verify_digits_end(t, i);
    size_t j = whole, end;
    long exponent = 0;
    v->whole = grouped ? (VerifySpan){"", 0} : (VerifySpan){t.s + i, whole - i};
    rational_whole(v->value, 0);
    v->known = whole == i || verify_read_digits((VerifySpan){t.s + i, whole - i}, v->value);
    const bool european = grouped && memchr(t.s + i, '.', whole - i);
    if (verify_at(t, j) == (european ? ',' : '.') &&
        (verify_digit(verify_at(t, j + 1)) || verify_starts(t, j + 1, "\\overline{"))) {
        const size_t first = j + 1;
        end = verify_digits_end(t, first);
        if (end > first)
            v->known = v->known && verify_add_decimals(v->value, (VerifySpan){t.s + first, end - first}, 0, false);
        j = end;
        if (verify_starts(t, j, "\\overline{")) {
            const size_t again = j + 10, last = verify_digits_end(t, again);
            v->known = v->known && last > again && verify_at(t, last) == '}' &&
                       verify_add_decimals(v->value, (VerifySpan){t.s + again, last - again}, j - first, true);
            j = verify_at(t, last) == '}' ? last + 1 : last;
        }
        v->whole.n = 0;
    }
    end = verify_exponent(t, j, &exponent);
    if (end > j) {
        v->known = v->known && rational_scale(v->value, exponent);
        v->whole.n = 0;
    }
    return end;
}

static inline size_t verify_value(VerifySpan t, size_t i, int depth, VerifyNumber *v);

/* Reads a signed number at i and nothing else up to `end`. */
static inline bool verify_signed(VerifySpan t, size_t i, size_t end, int depth, VerifyNumber *v) {
    const VerifySpan inside = {t.s, end};
    bool negative = false;
    for (i = verify_skip(inside, i); i < end && (t.s[i] == '-' || t.s[i] == '+'); i = verify_skip(inside, i + 1))
        negative ^= t.s[i] == '-';
    if (i >= end || depth >= VERIFY_NESTED) return false;
    const size_t after = verify_value(inside, i, depth + 1, v);
    if (after == i || verify_skip(inside, after) != end || !v->known) return false;
    if (negative) rational_negate(v->value);
    return true;
}

/* Reads an argument of a command at i: `{number}` or one digit. Returns its end, or i. */
static inline size_t verify_argument(VerifySpan t, size_t i, int depth, VerifyNumber *v) {
    size_t j = i;
    while (verify_at(t, j) == ' ') j++;
    if (verify_digit(verify_at(t, j))) {
        v->known = rational_digits(v->value, t.s + j, 1);
        return j + 1;
    }
    if (verify_at(t, j) != '{') return i;
    const size_t end = verify_braces_end(t, j);
    if (end == j) return i;
    v->known = verify_signed(t, j + 1, end - 1, depth, v);
    return end;
}

/* Reads \frac at i. Returns its end, or i; v->known is false if its arguments are not numbers. */
static inline size_t verify_latex_fraction(VerifySpan t, size_t i, int depth, VerifyNumber *v) {
    VerifyNumber bottom;
    if (!verify_starts(t, i, "\\frac") || verify_letter(verify_at(t, i + 5))) return i;
    verify_number_new(&bottom);
    const size_t a = verify_argument(t, i + 5, depth, v);
    const size_t b = a > i + 5 ? verify_argument(t, a, depth, &bottom) : a;
    v->known = b > a && v->known && bottom.known && mpq_sgn(bottom.value);
    if (v->known) {
        gmp()->div(v->value, v->value, bottom.value);
        v->known = rational_fits(v->value);
    }
    v->fraction = true;
    v->whole.n = 0;
    verify_number_free(&bottom);
    return b > i + 5 ? b : i + 5;
}

/* Reads `^` and an exponent at i: a whole number, in braces or parentheses or not. Raises v to it. Returns its end, or i
 * if there is no `^`. */
static inline size_t verify_raise(VerifySpan t, size_t i, int depth, VerifyNumber *v) {
    size_t j = i, end;
    while (verify_at(t, j) == ' ') j++;
    if (verify_at(t, j) != '^') return i;
    for (j++; verify_at(t, j) == ' ';) j++;
    VerifyNumber power;
    verify_number_new(&power);
    const char open = verify_at(t, j);
    if (open == '{' || open == '(') {
        const char *close = open == '{' ? NULL : (const char *)memchr(t.s + j, ')', t.n - j);
        end = open == '{' ? verify_braces_end(t, j) : close ? (size_t)(close - t.s) + 1 : j;
        power.known = end > j && verify_signed(t, j + 1, end - 1, depth, &power);
        if (end == j) end = t.n;
    } else {
        const size_t first = j + (open == '-' || open == '+');
        end = verify_digits_end(t, first);
        power.known = rational_digits(power.value, t.s + first, end - first);
        if (open == '-') rational_negate(power.value);
        if (end == first) end = first < t.n ? first + 1 : first;
    }
    long exponent = 0;
    char text[VERIFY_NUMBER_SIZE];
    power.known = power.known && rational_is_whole(power.value) && rational_print(power.value, text);
    if (power.known) exponent = strlen(text) > 6 ? 100000 : strtol(text, NULL, 10);
    v->known = v->known && power.known && rational_power(v->value, exponent);
    v->whole.n = 0;
    verify_number_free(&power);
    return end;
}

/* Multiplies v by a power of ten at i: `* 10^n`, `x 10^n`. Returns its end, or i. */
static inline size_t verify_scientific(VerifySpan t, size_t i, int depth, VerifyNumber *v) {
    const size_t sign = verify_skip(t, i);
    if (verify_at(t, sign) != '*' && (verify_at(t, sign) | 32) != 'x') return i;
    size_t j = verify_skip(t, sign + 1);
    const size_t brace = verify_at(t, j) == '{';
    j += brace;
    if (!verify_starts(t, j, "10") || verify_digit(verify_at(t, j + 2))) return i;
    VerifyNumber ten;
    verify_number_new(&ten);
    rational_whole(ten.value, 10);
    ten.known = true;
    size_t end = verify_raise(t, j + 2 + brace, depth, &ten);
    if (end == j + 2 + brace) end = i;
    else {
        v->known = v->known && ten.known;
        if (v->known) gmp()->mul(v->value, v->value, ten.value);
        v->known = v->known && rational_fits(v->value);
        v->whole.n = 0;
    }
    verify_number_free(&ten);
    return end;
}

/* Multiplies v by a word at i: thousand, million, billion, trillion. Returns its end, or i. */
static inline size_t verify_scale_word(VerifySpan t, size_t i, VerifyNumber *v) {
    static const struct {
        const char *word;
        long zeros;
    } words[] = {{"thousand", 3}, {"million", 6}, {"billion", 9}, {"trillion", 12}};
    const size_t begin = verify_skip(t, i), end = verify_letters_end(t, begin);
    for (size_t k = 0; begin > i && k < sizeof words / sizeof *words; k++)
        if (end - begin == strlen(words[k].word) && !strncasecmp(t.s + begin, words[k].word, end - begin)) {
            v->known = v->known && rational_scale(v->value, words[k].zeros);
            v->whole.n = 0;
            return end;
        }
    return i;
}

/* Adds a proper fraction at i, which makes a mixed number: ` 1/2` or `\frac{1}{2}`. Returns its end, or i. */
static inline size_t verify_mixed(VerifySpan t, size_t i, int depth, VerifyNumber *v) {
    size_t j = i, end = i;
    while (verify_at(t, j) == ' ') j++;
    VerifyNumber part, bottom;
    verify_number_new(&part), verify_number_new(&bottom);
    if (verify_starts(t, j, "\\frac")) {
        end = verify_latex_fraction(t, j, depth, &part);
    } else if (j > i && verify_digit(verify_at(t, j))) {
        const size_t a = verify_digits_end(t, j);
        const size_t slash = a + (verify_at(t, a) == ' '), b = slash + 1 + (verify_at(t, slash + 1) == ' ');
        const size_t c = verify_at(t, slash) == '/' ? verify_digits_end(t, b) : b;
        if (c > b && rational_digits(part.value, t.s + j, a - j) && rational_digits(bottom.value, t.s + b, c - b) &&
            mpq_sgn(bottom.value)) {
            gmp()->div(part.value, part.value, bottom.value);
            part.known = true;
            end = c;
        }
    }
    rational_whole(bottom.value, 1);
    if (end > i && part.known && mpq_sgn(part.value) > 0 && gmp()->compare(part.value, bottom.value) < 0) {
        gmp()->add(v->value, v->value, part.value);
        v->known = v->known && rational_fits(v->value);
        v->fraction = true;
        v->whole.n = 0;
    } else if (end > i && verify_starts(t, j, "\\frac")) {
        v->known = false; /* a product with a fraction */
    } else {
        end = i;
    }
    verify_number_free(&part), verify_number_free(&bottom);
    return end;
}

/* Divides v by the digits after a slash at i. Returns their end, or i. */
static inline size_t verify_divide(VerifySpan t, size_t i, VerifyNumber *v) {
    const size_t slash = i + (verify_at(t, i) == ' '), b = slash + 1 + (verify_at(t, slash + 1) == ' ');
    const size_t end = verify_at(t, slash) == '/' ? verify_digits_end(t, b) : b;
    if (verify_at(t, slash) != '/' || end == b) return i;
    mpq_t bottom;
    rational_init(bottom);
    v->known = v->known && rational_digits(bottom, t.s + b, end - b) && mpq_sgn(bottom);
    if (v->known) gmp()->div(v->value, v->value, bottom);
    v->known = v->known && rational_fits(v->value);
    v->fraction = true;
    v->whole.n = 0;
    rational_clear(bottom);
    return end;
}

/* Reads an unsigned value at i. Returns its end, or i if nothing that is written with digits begins there; v->known
 * says whether it is a number. */
static inline size_t verify_value(VerifySpan t, size_t i, int depth, VerifyNumber *v) {
    const char c = verify_at(t, i);
    size_t end = i, next;
    v->fraction = false;
    v->whole.n = 0;
    if (verify_starts(t, i, "\\sqrt")) {
        end = i + 5;
        if (verify_at(t, end) == '[') {
            while (end < t.n && t.s[end] != ']' && end - i < VERIFY_DISTANCE) end++;
            end += end < t.n;
        }
        next = verify_argument(t, end, VERIFY_NESTED, v);
        v->known = false;
        return next > end ? next : end;
    }
    if (c == '\\') {
        end = verify_latex_fraction(t, i, depth, v);
        next = end > i ? verify_raise(t, end, depth, v) : end;
        if (next > end) v->known = false; /* the power of a fraction without parentheses */
        return next;
    }
    if (c == '(' || c == '{') {
        size_t close = i + 1;
        while (close < t.n && t.s[close] != '(' && t.s[close] != ')' && t.s[close] != '}' &&
               close - i < VERIFY_DISTANCE)
            close++;
        if (c == '{') close = verify_braces_end(t, i) - 1;
        if (c == '{' ? close < i : verify_at(t, close) != ')') return i;
        if (!verify_signed(t, i + 1, close, depth, v)) return i;
        end = close + 1;
        v->whole.n = 0;
        return verify_raise(t, end, depth, v);
    }
    if (!verify_digit(c) && !(c == '.' && verify_digit(verify_at(t, i + 1)) && !(i && t.s[i - 1] == '.'))) return i;
    end = verify_decimal(t, i, false, v);
    const bool plain = v->whole.n > 0;
    if ((next = verify_raise(t, end, depth, v)) > end) return next;
    if (plain && (next = verify_mixed(t, end, depth, v)) > end) return next;
    if ((next = verify_divide(t, end, v)) > end) {
        if (verify_at(t, next) == '/' && verify_digit(verify_at(t, next + 1))) v->known = false; /* a date */
        return next;
    }
    if ((next = verify_scientific(t, end, depth, v)) > end) return next;
    return verify_scale_word(t, end, v);
}

/* ---- what is around a number ------------------------------------------------------------------------------------ */

/* Extends the number to the left by a sign, which may have a currency sign before or after it. Spaces may follow a sign
 * that nothing precedes but the beginning, `=`, `(`, `:`, or another mark. */
static inline void verify_sign(VerifySpan t, VerifyNumber *v) {
    for (;;) {
        size_t i = verify_skip_back(t, v->begin);
        if (!i || (t.s[i - 1] != '-' && t.s[i - 1] != '+')) return;
        const bool spaced = t.s[i] == ' ' || (i < v->begin && memchr(t.s + i, ' ', v->begin - i));
        const size_t before = verify_skip_back(t, i - 1);
        const char c = before ? t.s[before - 1] : '=';
        const bool touches = before == i - 1 && before;
        const bool operand = verify_digit(c) || c == ')' || c == '}' || c == ']' || c == '%' || c == '!' ||
                             (verify_letter(c) && (touches || spaced));
        if (operand && (touches || spaced || verify_digit(c))) return;
        if (t.s[i - 1] == '-') v->negative = !v->negative;
        v->begin = i - 1;
    }
}

/* Whether a unit or an ordinal of letters [i, end) may touch a number: two letters, or one that is a unit of its own. */
static inline bool verify_touching(VerifySpan t, size_t i, size_t end) {
    return end > i + 1 || (end == i + 1 && strchr("mgshLlJWVNFKCA", t.s[i]));
}

/* Whether an operand begins at i, after spaces. */
static inline bool verify_operand(VerifySpan t, size_t i) {
    i = verify_skip(t, i);
    const char c = verify_at(t, i);
    return verify_digit(c) || c == '(' || c == '{' || c == '\\' || (c == '.' && verify_digit(verify_at(t, i + 1))) ||
           (verify_letter(c) && verify_letters_end(t, i) == i + 1);
}

/* Whether what follows the number makes it a part of something else. */
static inline bool verify_continues(VerifySpan t, size_t i) {
    const char c = verify_at(t, i);
    if (verify_letter(c)) return !verify_touching(t, i, verify_letters_end(t, i));
    if (c == '^' || c == 0x7F) return true;
    if (c == '_' || c == ':') return verify_digit(verify_at(t, i + 1)) || verify_at(t, i + 1) == '{';
    if (c == '(' && (verify_digit(verify_at(t, i + 1)) || verify_letters_end(t, i + 1) == i + 2)) return true;
    const size_t j = verify_skip(t, i);
    const char next = verify_at(t, j);
    if (next == '\\') return !verify_starts(t, j, "\\in") || verify_starts(t, j, "\\infty");
    if (next == '-')
        return verify_operand(t, j + 1) && (j == i || verify_at(t, j + 1) == ' ' || verify_at(t, j + 1) == '$');
    if (next == '/' && verify_letter(verify_at(t, j + 1))) return verify_letters_end(t, j + 1) == j + 2 && j == i;
    return (next == '+' || next == '*' || next == '/' || next == '^') && verify_operand(t, j + 1);
}

/* Whether what precedes the number makes it a part of something else. */
static inline bool verify_is_continued(VerifySpan t, size_t begin) {
    size_t i = begin;
    while (i && t.s[i - 1] == '$') i--;
    const char touching = i ? t.s[i - 1] : ' ';
    if (verify_letter(touching)) { /* x2, but not USD5 */
        size_t j = i;
        while (j && verify_letter(t.s[j - 1])) j--;
        return i - j == 1 || (j && t.s[j - 1] == '\\');
    }
    if (touching == '^' || touching == '_' || touching == 0x7F) return true;
    if (touching == ':' && i > 1 && verify_digit(t.s[i - 2])) return true;
    i = verify_skip_back(t, i);
    const char op = i ? t.s[i - 1] : ' ';
    if (verify_letter(op)) { /* \sin 30 */
        size_t j = i;
        while (j && verify_letter(t.s[j - 1])) j--;
        return j && t.s[j - 1] == '\\';
    }
    if (verify_digit(op) || op == '}') { /* \log_2 5 */
        size_t j = i - (op == '}');
        while (j && verify_digit(t.s[j - 1])) j--;
        if (j && op == '}' && t.s[j - 1] == '{') j--;
        return j && t.s[j - 1] == '_';
    }
    if (op != '+' && op != '-' && op != '*' && op != '/') return false;
    const bool spaced = i < begin;
    const bool alone = i > 1 && t.s[i - 2] == ' ';
    i = verify_skip_back(t, i - 1);
    const char c = i ? t.s[i - 1] : ' ';
    if (verify_digit(c) || c == ')' || c == '}') return true;
    if (!verify_letter(c)) return false;
    return op != '-' ? !(op == '*' && !spaced) : spaced && alone && (i < 2 || !verify_letter(t.s[i - 2]));
}

/* Whether the number is the last element of a tuple or an interval: `(2, 3)`. */
static inline bool verify_in_tuple(VerifySpan t, const VerifyNumber *v) {
    const char close = verify_at(t, verify_skip(t, v->end));
    if (close != ')' && close != ']' && close != '}' && close != PLAIN_CLOSE) return false;
    bool comma = false;
    for (size_t i = v->begin; i--;) {
        const char c = t.s[i];
        if (c == '(' || c == '[' || c == '{' || c == PLAIN_OPEN) return comma;
        comma |= c == ',' || c == ';';
        if (!verify_digit(c) && !verify_blank(c) && !strchr(",;.+-/", c)) return comma && c == '\\';
    }
    return false;
}

/* Whether the word [i, end) is a unit that an answer may have after its number: one of those of the MATH data set and
 * their abbreviations, or any word at the beginning of \text{}. */
static inline bool verify_is_unit(VerifySpan t, size_t i, size_t end) {
    static const char *const units[] = {
        "cm",         "mm",      "km",      "m",       "in",      "ft",        "mi",         "yd",          "kg",
        "g",          "mg",      "lb",      "lbs",     "oz",      "L",         "l",          "ml",          "mL",
        "s",          "sec",     "min",     "h",       "hr",      "hrs",       "hour",       "hours",       "minute",
        "minutes",    "second",  "seconds", "day",     "days",    "week",      "weeks",      "month",       "months",
        "year",       "years",   "mph",     "kmph",    "kph",     "degree",    "degrees",    "deg",         "percent",
        "cent",       "cents",   "dollar",  "dollars", "euro",    "euros",     "pound",      "pounds",      "ounce",
        "ounces",     "gram",    "grams",   "inch",    "inches",  "foot",      "feet",       "mile",        "miles",
        "yard",       "yards",   "meter",   "meters",  "metre",   "metres",    "centimeter", "centimeters", "kilometer",
        "kilometers", "square",  "squared", "cubic",   "cubed",   "unit",      "units",      "sq",          "per",
        "pm",         "am",      "a",       "p",       "point",   "points",    "way",        "ways",        "student",
        "students",   "people",  "ton",     "tons",    "liter",   "liters",    "gallon",     "gallons",     "quart",
        "quarts",     "pint",    "pints",   "cup",     "cups",    "radian",    "radians",    "rad",         "th",
        "st",         "nd",      "rd",      "USD",     "EUR",     "times",     "digits",     "edges",       "meals",
        "gm",         "Hz",      "W",       "J",       "N",       "V",         "K",          "C",           "F",
        "integers",   "numbers", "items",   "pieces",  "minutes", "solutions", "coins",      "faces",       "sides",
        "choices"};
    const size_t n = end - i;
    if (i && t.s[i - 1] == PLAIN_TEXT) return true;
    for (size_t k = 0; k < sizeof units / sizeof *units; k++)
        if (strlen(units[k]) == n && !memcmp(units[k], t.s + i, n)) return true;
    return false;
}

/* The exponent, without its sign, of the unit of a number that ends at i: 2 for `m^2`, `\text{ cm}^{2}`, `m/s^2` and
 * `m s^{-2}`; 0 if there is none. */
static inline long verify_unit_power(VerifySpan t, size_t i) {
    for (size_t end;; i = end) {
        while (verify_blank(verify_at(t, i)) || verify_at(t, i) == '/') i++;
        end = verify_letters_end(t, i);
        if (end == i || !verify_is_unit(t, i, end)) break;
    }
    if (verify_at(t, i) != '^') return 0;
    i += verify_at(t, i + 1) == '{' ? 2 : 1;
    return strtol(t.s + i + (verify_at(t, i) == '-'), NULL, 10);
}

/* Finds the next thing that is written with digits at or after `from`: v->known says whether it is a number. */
static inline bool verify_number(VerifySpan t, size_t from, VerifyNumber *v) {
    for (size_t i = from; i < t.n; i++) {
        const char c = t.s[i];
        if (c == '^' || c == '_') { /* exponents and subscripts are no numbers */
            size_t j = i + 1;
            const size_t end =
                verify_at(t, j) == '{' ? verify_braces_end(t, j) : verify_digits_end(t, j + (verify_at(t, j) == '-'));
            if (c == '_' && (!i || !(verify_letter(t.s[i - 1]) || verify_digit(t.s[i - 1]) || t.s[i - 1] == '}')))
                continue;
            if (end > j) i = end - 1;
            continue;
        }
        if (!verify_digit(c) && c != '.' && c != '\\' && c != '(') continue;
        v->negative = v->percent = false;
        const size_t end = verify_value(t, i, 0, v);
        if (end == i) continue;
        v->begin = i;
        v->end = end;
        verify_sign(t, v);
        if (v->known && v->negative) rational_negate(v->value);
        v->known = v->known && !verify_continues(t, end) && !verify_is_continued(t, v->begin);
        const size_t unit = verify_skip(t, end);
        v->percent = verify_at(t, unit) == '%' || (unit + 7 <= t.n && !strncasecmp(t.s + unit, "percent", 7));
        v->power = verify_unit_power(t, end);
        return true;
    }
    return false;
}

/* Moves the number `v` to the place of `to`. */
static inline void verify_number_swap(VerifyNumber *to, VerifyNumber *v) {
    const VerifyNumber kept = *to;
    *to = *v;
    *v = kept;
}

/* ---- which number counts ---------------------------------------------------------------------------------------- */

/* The last number of the text; unknown if the last thing that is written with digits is not a number. */
static inline bool verify_last_number(VerifySpan t, VerifyNumber *v) {
    VerifyNumber next;
    if (!verify_number(t, 0, v)) return false;
    verify_number_new(&next);
    while (verify_number(t, v->end, &next)) verify_number_swap(v, &next);
    verify_number_free(&next);
    return v->known && !verify_in_tuple(t, v);
}

/* The first number of the text, or the one after the `=` of the expression that it begins with. */
static inline bool verify_first_number(VerifySpan t, VerifyNumber *v) {
    while (verify_number(t, 0, v)) {
        if (v->known) return !verify_in_tuple(t, v);
        const char *equals = (const char *)memchr(t.s + v->end, '=', t.n - v->end);
        if (!equals) return false;
        const size_t after = (size_t)(equals - t.s) + 1;
        t = (VerifySpan){t.s + after, t.n - after};
    }
    return false;
}

/* Whether [i, end) holds nothing but words, units and punctuation. words: any words, else only units after the
 * number. */
static inline bool verify_only_words(VerifySpan t, size_t i, size_t end, bool words, bool units) {
    while (i < end) {
        const char c = t.s[i];
        if (c == '^') { /* of a unit: m^2 */
            const size_t j = i + 1, next = verify_at(t, j) == '{' ? verify_braces_end(t, j) : verify_digits_end(t, j);
            if (next == j || !i || !(verify_letter(t.s[i - 1]) || t.s[i - 1] == PLAIN_TEXT_END)) return false;
            i = next;
        } else if (verify_letter(c)) {
            const size_t next = verify_letters_end(t, i);
            if (!(units && verify_is_unit(t, i, next)) && !(words && next > i + 1)) return false;
            i = next;
        } else if ((unsigned char)c >= 0x80) {
            static const char *const currencies[] = {"\u20ac", "\u00a3", "\u00a5"}; /* euro, pound, yen */
            size_t known = 0;
            for (size_t k = 0; k < 3; k++)
                if (verify_starts(t, i, currencies[k])) known = strlen(currencies[k]);
            if (!known && !words) return false;
            i += known ? known : 1;
        } else {
            if (!verify_blank(c) && !verify_space(c) && c != PLAIN_DEGREE && c != '%' && c != '.' &&
                !(c == '/' && units) && !(words && strchr(",!?:;'\"()*_#", c)))
                return false;
            i++;
        }
    }
    return true;
}

/* Whether the left side of an equation is a multiple of an unknown, so that the right side is not its value: `-x`,
 * `2x`. */
static inline bool verify_multiple(VerifySpan t) {
    t = verify_trim(t);
    if (t.n && t.s[0] == '-' && verify_letter(verify_at(t, verify_skip(t, 1)))) return true;
    for (size_t i = 0; i + 1 < t.n; i++)
        if (verify_digit(t.s[i]) && verify_letters_end(t, i + 1) == i + 2) return true;
    return false;
}

/* The only number of the text, after its last `=`; false if there is another, or mathematics with it. words: the text
 * may hold any words, else only units after the number. */
static inline bool verify_only_number(VerifySpan t, bool words, VerifyNumber *v) {
    const char *equals = t.n ? (const char *)memrchr(t.s, '=', t.n) : NULL;
    if (equals) {
        const size_t after = (size_t)(equals - t.s) + 1;
        if ((!words && after > 32) || verify_multiple((VerifySpan){t.s, after - 1})) return false;
        t = verify_trim((VerifySpan){t.s + after, t.n - after});
    }
    while (t.n > 2 && ((t.s[0] == '{' && verify_braces_end(t, 0) == t.n)))
        t = verify_trim((VerifySpan){t.s + 1, t.n - 2});
    VerifyNumber next;
    if (!verify_number(t, 0, v) || !v->known || verify_at(t, v->end) == '!') return false;
    verify_number_new(&next);
    const bool more = verify_number(t, v->end, &next);
    verify_number_free(&next);
    return !more && verify_only_words(t, 0, v->begin, words, false) && verify_only_words(t, v->end, t.n, words, true);
}

/* ---- the check ------------------------------------------------------------------------------------------------- */

/* Reads the final number of a completion; v must be new. */
static inline bool verify_final_number(VerifySpan text, bool hash_only, VerifyNumber *v) {
    VerifyMark mark;
    const VerifySpan final = verify_final(text, &mark);
    if (hash_only && mark != VERIFY_HASHED) {
        VerifySpan hashed = text;
        verify_after_last(&hashed, "</think>");
        if (!verify_hashed(&hashed)) return false;
        return verify_final_number(hashed, false, v);
    }
    TextBuffer plain = {0};
    verify_plain(final, &plain);
    const VerifySpan t = verify_trim((VerifySpan){plain.text, plain.length});
    const bool found = mark == VERIFY_HASHED  ? verify_first_number(t, v)
                       : mark == VERIFY_BOXED ? verify_only_number(t, true, v)
                                              : verify_last_number(t, v);
    v->whole.s = NULL; /* it pointed into the plain text; its length stays, for verify_reverse() */
    text_free(&plain);
    return found;
}

/* Reads the number that a record's answer is. words: it may have any words with it, else only units. A GSM8K solution
 * is the number after its `####`. */
static inline bool verify_answer_number(VerifySpan answer, bool words, VerifyNumber *v) {
    VerifyMark mark;
    const VerifySpan final = verify_final(answer, &mark);
    TextBuffer plain = {0};
    verify_plain(final, &plain);
    const VerifySpan t = verify_trim((VerifySpan){plain.text, plain.length});
    const bool found = mark == VERIFY_HASHED ? verify_first_number(t, v) : verify_only_number(t, words, v);
    text_free(&plain);
    return found;
}

/* Turns the digits of a number that is digits only around; false for any other number. */
static inline bool verify_reverse(VerifyNumber *v, size_t digits) {
    char text[VERIFY_NUMBER_SIZE], turned[VERIFY_NUMBER_SIZE];
    const bool negative = mpq_sgn(v->value) < 0;
    if (!digits || !rational_is_whole(v->value) || !rational_print(v->value, text)) return false;
    const size_t n = strlen(text + negative);
    if (n > digits) return false;
    for (size_t i = 0; i < n; i++) turned[i] = text[negative + n - 1 - i];
    memset(turned + n, '0', digits - n);
    if (!rational_digits(v->value, turned, digits)) return false;
    if (negative) rational_negate(v->value);
    return true;
}

/* Whether the record's fields have the style. */
static inline bool verify_style(const json_t *fields, const char *style) {
    return verify_same(verify_field(json_object_get(fields, "style")), verify_span(style));
}

/* The final number of a completion, of a record with these fields. */
static inline bool verify_styled_number(VerifySpan completion, bool hash_only, const json_t *fields, VerifyNumber *v) {
    hash_only |= verify_style(fields, "scratchpad");
    if (!verify_final_number(completion, hash_only, v)) return false;
    return !verify_style(fields, "reversed") || verify_reverse(v, v->whole.n);
}

/* Whether |a - b| <= the record's field `tolerance`, which is taken as it is written: 0.1 is a tenth. */
static inline bool verify_within(mpq_srcptr a, mpq_srcptr b, const json_t *fields) {
    const json_t *field = json_object_get(fields, "tolerance");
    if (!json_is_number(field)) return false;
    char text[32];
    mpq_t difference;
    VerifyNumber most;
    rational_init(difference);
    verify_number_new(&most);
    json_number_text(json_number_value(field), text);
    const bool known = verify_decimal(verify_span(text), 0, true, &most) == strlen(text) && most.known;
    gmp()->sub(difference, a, b);
    if (mpq_sgn(difference) < 0) rational_negate(difference);
    const bool within = known && gmp()->compare(difference, most.value) <= 0;
    rational_clear(difference);
    verify_number_free(&most);
    return within;
}

/* Whether two numbers are equal; a percentage equals its number and its hundredth. Exponents of units, if both numbers
 * have one, must be equal. */
static inline bool verify_equal(const VerifyNumber *wanted, const VerifyNumber *given, const json_t *fields) {
    if (wanted->power && given->power && wanted->power != given->power) return false;
    if (gmp()->equal(wanted->value, given->value)) return !(given->fraction && rational_is_whole(wanted->value));
    if (verify_within(wanted->value, given->value, fields)) return true;
    if (wanted->percent == given->percent) return false;
    mpq_t share;
    rational_init(share);
    gmp()->set(share, wanted->percent ? wanted->value : given->value);
    const bool equal = rational_scale(share, -2) && gmp()->equal(share, wanted->percent ? given->value : wanted->value);
    rational_clear(share);
    return equal;
}

/* Right if the completion's final number equals the answer's; hash_only: only a number after `####` counts. */
static inline float verify_numeric(const RewardInput *in, const json_t *fields, bool hash_only) {
    if (!rational_available(NULL)) return NAN;
    VerifyNumber wanted, given;
    verify_number_new(&wanted), verify_number_new(&given);
    float score = NAN;
    if (verify_answer_number(verify_span(in->answer), true, &wanted))
        score = verify_styled_number(verify_completion(in), hash_only, fields, &given) &&
                        verify_equal(&wanted, &given, fields)
                    ? 1
                    : 0;
    verify_number_free(&wanted), verify_number_free(&given);
    return score;
}

/* Whether the text is a single number and nothing else but units, or a GSM8K solution. */
static inline bool verify_is_number(const char *text) {
    if (!rational_available(NULL)) return false;
    VerifyNumber v;
    verify_number_new(&v);
    const bool number = verify_answer_number(verify_span(text), false, &v);
    verify_number_free(&v);
    return number;
}

/* Writes the final number of a completion in canonical form to out[VERIFY_NUMBER_SIZE]. */
static inline bool verify_styled_text(VerifySpan completion, bool hash_only, const json_t *fields, char *out) {
    if (!rational_available(NULL)) return false;
    VerifyNumber v;
    verify_number_new(&v);
    const bool found = verify_styled_number(completion, hash_only, fields, &v) && rational_print(v.value, out);
    verify_number_free(&v);
    return found;
}

/* The same for the number of a record without fields, or of a record's answer. */
static inline bool verify_number_text(VerifySpan text, bool hash_only, bool answer, char *out) {
    if (!answer) return verify_styled_text(text, hash_only, NULL, out);
    if (!rational_available(NULL)) return false;
    VerifyNumber v;
    verify_number_new(&v);
    const bool found = verify_answer_number(text, true, &v) && rational_print(v.value, out);
    verify_number_free(&v);
    return found;
}

#endif
