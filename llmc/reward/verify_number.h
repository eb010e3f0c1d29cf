/* verify_number.h - exact comparison of numbers that are written in many ways.
 *
 *   number     = [sign] [`$` | `\$`] [sign] (decimal | fraction)        `%` and other units are ignored
 *   sign       = `-` | `+` | U+2212
 *   decimal    = (whole [`.` digits] | `.` digits) [`e` [`-` | `+`] digits]        also `E`
 *   whole      = digits | 1 to 3 digits, then groups of `,` or `{,}` and 3 digits
 *   fraction   = whole [` `] `/` [` `] digits | (`\frac` | `\dfrac` | `\tfrac`) `{` digits `}{` digits `}`
 *
 * A sign directly after a digit, letter or closing parenthesis is an operator (`5-3` contains 5 and 3). In a list,
 * commas separate numbers and a slash does not make a fraction.
 *
 * Two numbers are equal if their canonical texts are: a decimal without redundant zeros, plus or exponent, or p/q in
 * lowest terms if no finite decimal exists. So `1,234.50` = `1234.5`, `\frac{1}{2}` = `1/2` = `0.5`, `$5` = `5`, `50%`
 * = `50`, `-0` = `0` and `1e3` = `1000`. A fraction is never accepted for a whole number (`84/2` for 42 is an
 * unfinished division, not an answer). The number of an answer is the first one after `####` and the last one
 * elsewhere.
 *
 * The record's field `style`: `reversed` = digits are written least significant first, after the sign (125 is written
 * 521), without commas, decimals or exponent (Lee et al. 2023, Teaching Arithmetic to Small Transformers);
 * `scratchpad` = work comes first, only a number after `####` counts.
 *
 * Limits: decimals have at most 1,000 digits, written or after the exponent is applied, and fractions at most 38 (128
 * bits). Beyond that a text has no number, which is wrong in a completion and cannot be scored in a record.
 *
 *     char number[VERIFY_NUMBER_SIZE];
 *     bool fraction;
 *     if (verify_final_number("It costs $1,234.50.", false, false, number, &fraction)) puts(number);  // 1234.5
 */
#ifndef LLMC_REWARD_VERIFY_NUMBER_H
#define LLMC_REWARD_VERIFY_NUMBER_H

#include "verify_answer.h" /* VerifySpan, verify_digit, verify_starts, VERIFY_HASHED, ... */
#include <math.h>

enum {
    VERIFY_NUMBER_SIZE = 1040, /* bytes of a canonical number with its NUL */
    VERIFY_DIGITS = 1000,      /* maximum number of digits */
};

/* ---- reading --------------------------------------------------------------------------------------------------- */

typedef struct VerifyNumber {
    size_t begin, end;                       /* position, sign included */
    VerifySpan whole, decimals, denominator; /* digits (whole may contain commas); empty if absent */
    bool negative;
    int exponent; /* power of ten */
} VerifyNumber;

static inline size_t verify_digits_end(VerifySpan t, size_t i) {
    while (i < t.n && verify_digit(t.s[i])) i++;
    return i;
}

/* The length of a thousands separator and its group at i ("," or LaTeX's "{,}" and exactly 3 digits), or 0. */
static inline size_t verify_group(VerifySpan t, size_t i) {
    const size_t comma = verify_starts(t, i, ",") ? 1 : verify_starts(t, i, "{,}") ? 3 : 0;
    return comma && verify_digits_end(t, i + comma) == i + comma + 3 ? comma + 3 : 0;
}

/* Reads \frac{a}{b}, \dfrac or \tfrac at i; t.s[i] is the backslash. */
static inline bool verify_latex_fraction(VerifySpan t, size_t i, VerifyNumber *v) {
    i++;
    if (i < t.n && (t.s[i] == 'd' || t.s[i] == 't')) i++;
    if (!verify_starts(t, i, "frac{")) return false;
    const size_t a = i + 5, a_end = verify_digits_end(t, a), b = a_end + 2;
    if (a_end == a || !verify_starts(t, a_end, "}{")) return false;
    const size_t b_end = verify_digits_end(t, b);
    if (b_end == b || !verify_starts(t, b_end, "}")) return false;
    v->whole = (VerifySpan){t.s + a, a_end - a};
    v->denominator = (VerifySpan){t.s + b, b_end - b};
    v->end = b_end + 1;
    return true;
}

/* Reads a decimal at i, with its exponent or denominator. */
static inline void verify_decimal(VerifySpan t, size_t i, bool list, VerifyNumber *v) {
    size_t j = verify_digits_end(t, i), k;
    if (!list && j - i >= 1 && j - i <= 3)
        while ((k = verify_group(t, j))) j += k;
    v->whole = (VerifySpan){t.s + i, j - i};
    if (j + 1 < t.n && t.s[j] == '.' && verify_digit(t.s[j + 1])) {
        k = verify_digits_end(t, j + 1);
        v->decimals = (VerifySpan){t.s + j + 1, k - j - 1};
        j = k;
    }
    if (j < t.n && (t.s[j] | 32) == 'e') {
        k = j + 1;
        const bool down = k < t.n && t.s[k] == '-';
        if (k < t.n && (down || t.s[k] == '+')) k++;
        if (k < t.n && verify_digit(t.s[k])) {
            for (; k < t.n && verify_digit(t.s[k]); k++)
                if (v->exponent < 100000) v->exponent = 10 * v->exponent + (t.s[k] - '0');
            if (down) v->exponent = -v->exponent;
            j = k;
        }
    } else if (!list && !v->decimals.n) {
        k = j;
        if (verify_starts(t, k, " ")) k++;
        if (verify_starts(t, k, "/")) {
            k++;
            if (verify_starts(t, k, " ")) k++;
            const size_t end = verify_digits_end(t, k);
            if (end > k) {
                v->denominator = (VerifySpan){t.s + k, end - k};
                j = end;
            }
        }
    }
    v->end = j;
}

/* Extends the number to the left by a sign, which may have a dollar sign before or after it. */
static inline void verify_sign(VerifySpan t, VerifyNumber *v) {
    size_t i = v->begin, width;
    for (int dollar = 0; dollar < 2; dollar++) {
        if (i && t.s[i - 1] == '$') i -= i > 1 && t.s[i - 2] == '\\' ? 2 : 1;
        width = i && (t.s[i - 1] == '-' || t.s[i - 1] == '+') ? 1 : i >= 3 && verify_starts(t, i - 3, "\u2212") ? 3 : 0;
        const char before = i > width ? t.s[i - width - 1] : ' ';
        if (!width || verify_digit(before) || verify_letter(before) || before == ')') break;
        v->negative = t.s[i - 1] != '+';
        i -= width;
        if (v->begin != i + width) break;
    }
    v->begin = i;
}

/* Finds the next number at or after `from`. In a list, commas separate numbers and a slash does not make a fraction. */
static inline bool verify_number(VerifySpan t, size_t from, bool list, VerifyNumber *v) {
    for (size_t i = from; i < t.n; i++) {
        *v = (VerifyNumber){.begin = i};
        if (verify_digit(t.s[i]) || (t.s[i] == '.' && i + 1 < t.n && verify_digit(t.s[i + 1])))
            verify_decimal(t, i, list, v);
        else if (t.s[i] != '\\' || !verify_latex_fraction(t, i, v)) continue;
        verify_sign(t, v);
        return true;
    }
    return false;
}

/* ---- canonical text --------------------------------------------------------------------------------------------- */

/* Writes digits x 10^scale without redundant zeros. The caller makes sure that it fits. */
static inline void verify_print(bool negative, const char *digits, int n, int scale, char *out) {
    while (n && *digits == '0') {
        digits++;
        n--;
    }
    while (n && digits[n - 1] == '0') {
        n--;
        scale++;
    }
    if (!n) {
        memcpy(out, "0", 2);
        return;
    }
    if (negative) *out++ = '-';
    const int point = n + scale;
    if (point <= 0) {
        *out++ = '0';
        *out++ = '.';
        for (int i = point; i < 0; i++) *out++ = '0';
    }
    for (int i = 0; i < n; i++) {
        if (i && i == point) *out++ = '.';
        *out++ = digits[i];
    }
    for (int i = n; i < point; i++) *out++ = '0';
    *out = 0;
}

/* Writes x in decimal to the end of buffer[40]; returns the start of the text. */
static inline char *verify_u128(unsigned __int128 x, char buffer[40]) {
    char *p = buffer + 39;
    *p = 0;
    do *--p = (char)('0' + (int)(x % 10));
    while (x /= 10);
    return p;
}

static inline unsigned __int128 verify_gcd(unsigned __int128 a, unsigned __int128 b) {
    while (b) {
        const unsigned __int128 r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static inline bool verify_parse_u128(VerifySpan t, unsigned __int128 *x) {
    *x = 0;
    for (size_t i = 0; i < t.n; i++)
        if (verify_digit(t.s[i]) && (__builtin_mul_overflow(*x, (unsigned __int128)10, x) ||
                                     __builtin_add_overflow(*x, (unsigned __int128)(t.s[i] - '0'), x)))
            return false;
    return true;
}

/* Writes p / q as a finite decimal if there is one, else as "p/q" in lowest terms. False if q is 0 or the result has
 * more than 38 digits. */
static inline bool verify_print_fraction(bool negative, unsigned __int128 p, unsigned __int128 q, char *out) {
    char top[40], bottom[40];
    if (!q) return false;
    const unsigned __int128 g = verify_gcd(p, q);
    p /= g;
    q /= g;
    int twos = 0, fives = 0;
    unsigned __int128 rest = q;
    while (!(rest & 1)) {
        rest >>= 1;
        twos++;
    }
    while (rest % 5 == 0) {
        rest /= 5;
        fives++;
    }
    if (rest != 1) {
        const char *a = verify_u128(p, top), *b = verify_u128(q, bottom);
        snprintf(out, VERIFY_NUMBER_SIZE, "%s%s/%s", negative ? "-" : "", a, b);
        return true;
    }
    /* p / (2^twos 5^fives) = p 2^(scale-twos) 5^(scale-fives) / 10^scale */
    const int scale = twos > fives ? twos : fives;
    for (int i = twos; i < scale; i++)
        if (__builtin_mul_overflow(p, (unsigned __int128)2, &p)) return false;
    for (int i = fives; i < scale; i++)
        if (__builtin_mul_overflow(p, (unsigned __int128)5, &p)) return false;
    const char *a = verify_u128(p, top);
    verify_print(negative, a, (int)strlen(a), -scale, out);
    return true;
}

/* Writes the canonical text of the number's value to out[VERIFY_NUMBER_SIZE]. `reversed`: the digits are written least
 * significant first; only plain whole numbers are then allowed. False if there is no such number or it exceeds the
 * limits above. */
static inline bool verify_canonical(const VerifyNumber *v, bool reversed, char *out) {
    if (v->denominator.n) {
        unsigned __int128 p, q;
        return !reversed && verify_parse_u128(v->whole, &p) && verify_parse_u128(v->denominator, &q) &&
               verify_print_fraction(v->negative, p, q, out);
    }
    if (reversed && (v->decimals.n || v->exponent || !v->whole.n)) return false;
    if (v->whole.n + v->decimals.n > VERIFY_DIGITS) return false;
    char digits[VERIFY_DIGITS];
    int n = 0, scale = v->exponent - (int)v->decimals.n;
    for (size_t i = 0; i < v->whole.n; i++) {
        const char c = v->whole.s[reversed ? v->whole.n - 1 - i : i];
        if (verify_digit(c)) digits[n++] = c;
        else if (reversed) return false;
    }
    if (v->decimals.n) {
        memcpy(digits + n, v->decimals.s, v->decimals.n);
        n += (int)v->decimals.n;
    }
    if (n + scale > VERIFY_DIGITS || scale < -VERIFY_DIGITS) return false;
    verify_print(v->negative, digits, n, scale, out);
    return true;
}

static inline bool verify_is_whole(const char *canonical) { return !strpbrk(canonical, "./"); }

/* ---- the check ------------------------------------------------------------------------------------------------- */

/* Writes the final number of a text in canonical form to out[VERIFY_NUMBER_SIZE]; *fraction: it was written as a
 * fraction. */
static inline bool verify_final_number(const char *text, bool hash_only, bool reversed, char *out, bool *fraction) {
    VerifyMark mark;
    const VerifySpan t = verify_final(text, &mark);
    VerifyNumber v, next;
    if (hash_only && mark != VERIFY_HASHED) return false;
    if (!verify_number(t, 0, false, &v)) return false;
    if (mark != VERIFY_HASHED)
        while (verify_number(t, v.end, false, &next)) v = next;
    *fraction = v.denominator.n > 0;
    return verify_canonical(&v, reversed, out);
}

/* Whether the text is a single number and nothing else, or a GSM8K solution. */
static inline bool verify_is_number(const char *text) {
    VerifyMark mark;
    VerifyNumber v;
    const VerifySpan t = verify_final(text, &mark);
    return verify_number(t, 0, false, &v) && (mark == VERIFY_HASHED || (v.begin == 0 && v.end == t.n));
}

/* Right if the completion's final number equals the answer's; hash_only: only a number after `####` counts. */
static inline float verify_numeric(const RewardInput *in, const json_t *fields, bool hash_only) {
    const char *style = json_string_value(json_object_get(fields, "style"));
    const bool reversed = style && !strcmp(style, "reversed");
    char wanted[VERIFY_NUMBER_SIZE], given[VERIFY_NUMBER_SIZE];
    bool fraction;
    if (!verify_final_number(in->answer, false, false, wanted, &fraction)) return NAN;
    hash_only |= style && !strcmp(style, "scratchpad");
    if (!verify_final_number(in->completion, hash_only, reversed, given, &fraction)) return 0;
    return !strcmp(wanted, given) && !(fraction && verify_is_whole(wanted)) ? 1 : 0;
}

#endif
