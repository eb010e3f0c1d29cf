/* verify.h - verifiers for verifiable rewards: check a completion against a record's answer.
 *
 * Owns: finding the final answer in a text, exact comparison of numbers, the parser of countdown expressions, and the
 * checks of lists, brackets and patterns. A score is 1 (right), 0 (wrong) or NaN (cannot be scored, because the record
 * lacks what the check needs or a pattern hit its match limit). For any text, nothing here allocates per nesting level,
 * recurses deeper than 100 levels, or takes much more than linear time.
 *
 *   task                       check                       answer                        fields used
 *   add sub mul arithmetic     number                      the result                    style
 *   numeric                    number                      a number, or a GSM8K solution style
 *   word gsm8k                 number after `####` only    a number, or a GSM8K solution -
 *   countdown                  expression                  the target                    numbers (or nums), target
 *   sort                       list, by value              the sorted list               -
 *   brackets                   closers                     the missing closers           open
 *   exact                      text, trimmed               the text                      -
 *   regex                      PCRE2 search                the pattern, or               pattern
 *   (none)                     number if the answer is a number, else exact
 *
 * The final answer. Text up to the last `</think>` is ignored. In the rest, the final answer is the content of the last
 * `<answer>...</answer>`, else the text after the last `####` on its line, else the content of the last `\boxed{}`,
 * else all of it. The last one always counts, so listing many guesses earns nothing. A number is the first one after
 * `####` and the last one elsewhere. Countdown, sort and brackets read the last line that is not empty, after its last
 * colon.
 *
 * Numbers are compared exactly, as decimals of up to 1,000 digits or as fractions of up to 38: `1,234.50` = `1234.5`,
 * `\frac{1}{2}` = `1/2` = `0.5`, `$5` = `5`, `50%` = `50`, `-0` = `0`, `1e3` = `1000`. A minus directly after a digit,
 * letter or closing parenthesis is an operator (`5-3` contains 5 and 3). A fraction is never accepted for a whole
 * number (`84/2` for 42 is an unfinished division, not an answer).
 *
 * The field `style`: `reversed` = digits are written least significant first, after the sign (125 is written 521);
 * `scratchpad` = work comes first, only a number after `####` counts.
 *
 * Countdown: + - * / (also Unicode's minus, multiplication and division signs), parentheses, unary minus, whole
 * numbers. Expressions are evaluated in reduced 64-bit fractions; overflow and division by zero are wrong. Each number
 * may be used at most as often as it is given. `expression = number` is accepted if the number is the expression's
 * value.
 */
#ifndef LLMC_REWARD_VERIFY_H
#define LLMC_REWARD_VERIFY_H

#include "../base/error.h"
#include <jansson.h>
#include <math.h>
#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

enum {
    VERIFY_NUMBER_SIZE = 1040, /* bytes of a canonical number with its NUL */
    VERIFY_DIGITS = 1000,      /* maximum number of digits */
    VERIFY_DEPTH = 100,        /* maximum nesting of an expression */
    VERIFY_OPERANDS = 64,      /* maximum number of numbers in an expression */
};

/* A completion and the record that it is scored against. Any text may be NULL (= empty). */
typedef struct RewardInput {
    const char *prompt, *completion;
    const char *task, *answer, *fields; /* of the record; fields is a JSON object as text */
    int32_t tokens, max_tokens;         /* length of the completion; sampling limit (0: unknown) */
    bool finished;                      /* ended by its stop token, not by the limit */
    uint64_t id;                        /* sequence id, key of the random control */
    const int32_t *ids;                 /* (tokens) the completion's token ids, or NULL */
} RewardInput;

typedef struct VerifySpan {
    const char *s;
    size_t n;
} VerifySpan;

typedef enum {
    VERIFY_EXACT,
    VERIFY_NUMERIC,
    VERIFY_HASH,
    VERIFY_COUNTDOWN,
    VERIFY_SORT,
    VERIFY_BRACKETS,
    VERIFY_REGEX,
    VERIFY_AUTO
} VerifyKind;

/* The check for a task name, or -1 if the name is unknown. */
static inline int verify_kind(const char *task) {
    static const struct {
        const char *name;
        VerifyKind kind;
    } kinds[] = {{"", VERIFY_AUTO},       {"add", VERIFY_NUMERIC},        {"sub", VERIFY_NUMERIC},
                 {"mul", VERIFY_NUMERIC}, {"arithmetic", VERIFY_NUMERIC}, {"numeric", VERIFY_NUMERIC},
                 {"word", VERIFY_HASH},   {"gsm8k", VERIFY_HASH},         {"countdown", VERIFY_COUNTDOWN},
                 {"sort", VERIFY_SORT},   {"brackets", VERIFY_BRACKETS},  {"exact", VERIFY_EXACT},
                 {"regex", VERIFY_REGEX}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(task ? task : "", kinds[i].name)) return (int)kinds[i].kind;
    return -1;
}

/* ---- text ------------------------------------------------------------------------------------------------------ */

static inline bool verify_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static inline bool verify_digit(char c) { return c >= '0' && c <= '9'; }
static inline bool verify_letter(char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; }

static inline VerifySpan verify_span(const char *text) {
    VerifySpan span = {text ? text : "", text ? strlen(text) : 0};
    return span;
}

static inline VerifySpan verify_trim(VerifySpan t) {
    while (t.n && verify_space(t.s[0])) {
        t.s++;
        t.n--;
    }
    while (t.n && verify_space(t.s[t.n - 1])) t.n--;
    return t;
}

static inline bool verify_same(VerifySpan a, VerifySpan b) { return a.n == b.n && !memcmp(a.s, b.s, a.n); }

static inline bool verify_starts(VerifySpan t, size_t at, const char *word) {
    const size_t n = strlen(word);
    return at <= t.n && t.n - at >= n && !memcmp(t.s + at, word, n);
}

/* Reduces `t` to the text after the last `word`; false, with t unchanged, if `word` does not occur. */
static inline bool verify_after_last(VerifySpan *t, const char *word) {
    const size_t n = strlen(word);
    const char *last = NULL, *end = t->s + t->n;
    for (const char *p = t->s; (p = (const char *)memmem(p, (size_t)(end - p), word, n)); p += n) last = p + n;
    if (!last) return false;
    *t = (VerifySpan){last, (size_t)(end - last)};
    return true;
}

/* Reduces `t` to the text before the first `word`, if it occurs. */
static inline void verify_before(VerifySpan *t, const char *word) {
    const char *p = (const char *)memmem(t->s, t->n, word, strlen(word));
    if (p) t->n = (size_t)(p - t->s);
}

typedef enum { VERIFY_UNMARKED, VERIFY_TAGGED, VERIFY_HASHED, VERIFY_BOXED } VerifyMark;

/* The part of the completion that states the final answer, trimmed (see the head of this file). */
static inline VerifySpan verify_final(const char *completion, VerifyMark *mark) {
    VerifySpan all = verify_span(completion), t;
    verify_after_last(&all, "</think>");
    t = all;
    if (verify_after_last(&t, "<answer>")) {
        verify_before(&t, "</answer>");
        *mark = VERIFY_TAGGED;
        return verify_trim(t);
    }
    if (verify_after_last(&t, "####")) {
        verify_before(&t, "\n");
        *mark = VERIFY_HASHED;
        return verify_trim(t);
    }
    if (verify_after_last(&t, "\\boxed{")) {
        int open = 1;
        for (size_t i = 0; i < t.n; i++) {
            open += (t.s[i] == '{') - (t.s[i] == '}');
            if (!open) {
                t.n = i;
                *mark = VERIFY_BOXED;
                return verify_trim(t);
            }
        }
    }
    *mark = VERIFY_UNMARKED;
    return verify_trim(all);
}

/* The last line that is not empty, after its last colon, without a final full stop. */
static inline VerifySpan verify_last_line(VerifySpan t) {
    t = verify_trim(t);
    verify_after_last(&t, "\n");
    verify_after_last(&t, ":");
    t = verify_trim(t);
    if (t.n && t.s[t.n - 1] == '.') t.n--;
    return verify_trim(t);
}

/* Copies to out[size]; false if it does not fit. */
static inline bool verify_copy(VerifySpan t, char *out, size_t size) {
    if (t.n >= size) return false;
    memcpy(out, t.s, t.n);
    out[t.n] = 0;
    return true;
}

/* The record's fields, to be freed with json_decref(); NULL if they are absent or not a JSON object. */
static inline json_t *verify_fields(const RewardInput *in) {
    if (!in->fields || !in->fields[0]) return NULL;
    json_t *fields = json_loads(in->fields, 0, NULL);
    if (fields && !json_is_object(fields)) {
        json_decref(fields);
        fields = NULL;
    }
    return fields;
}

/* ---- numbers --------------------------------------------------------------------------------------------------- */

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

/* Is the text one number and nothing else, or a GSM8K solution? */
static inline bool verify_is_number(const char *text) {
    VerifyMark mark;
    VerifyNumber v;
    const VerifySpan t = verify_final(text, &mark);
    return verify_number(t, 0, false, &v) && (mark == VERIFY_HASHED || (v.begin == 0 && v.end == t.n));
}

/* Reads the last line as a list of numbers and nothing else; writes them to out[size], canonical and separated by one
 * space. */
static inline bool verify_final_list(const char *text, char *out, size_t size) {
    VerifyMark mark;
    const VerifySpan t = verify_last_line(verify_final(text, &mark));
    char number[VERIFY_NUMBER_SIZE];
    size_t at = 0, used = 0;
    VerifyNumber v;
    for (; verify_number(t, at, true, &v); at = v.end) {
        for (; at < v.begin; at++)
            if (!verify_space(t.s[at]) && !strchr(",;[](){}", t.s[at])) return false;
        if (v.begin < at || !verify_canonical(&v, false, number)) return false;
        const int n = snprintf(out + used, size - used, "%s%s", used ? " " : "", number);
        if ((size_t)n >= size - used) return false;
        used += (size_t)n;
    }
    for (; at < t.n; at++)
        if (!verify_space(t.s[at]) && !strchr(",;[](){}", t.s[at])) return false;
    return used > 0;
}

/* ---- countdown ------------------------------------------------------------------------------------------------- */

typedef struct VerifyRational {
    int64_t p, q; /* p / q in lowest terms, q > 0, p > INT64_MIN */
} VerifyRational;

typedef struct VerifyExpression {
    VerifySpan text;
    size_t at;
    int depth, count;
    int64_t operands[VERIFY_OPERANDS]; /* the numbers read so far, in order */
} VerifyExpression;

static inline bool verify_rational(__int128 p, __int128 q, VerifyRational *r) {
    if (!q) return false;
    if (q < 0) {
        p = -p;
        q = -q;
    }
    const __int128 g = (__int128)verify_gcd((unsigned __int128)(p < 0 ? -p : p), (unsigned __int128)q);
    p /= g;
    q /= g;
    if (p > INT64_MAX || p < -INT64_MAX || q > INT64_MAX) return false;
    *r = (VerifyRational){(int64_t)p, (int64_t)q};
    return true;
}

/* Computes a op b; false on overflow or division by zero. |p| and q are below 2^63, so no step exceeds 128 bits. */
static inline bool verify_operate(VerifyRational a, char op, VerifyRational b, VerifyRational *r) {
    const __int128 ap = a.p, aq = a.q, bp = b.p, bq = b.q;
    switch (op) {
    case '+': return verify_rational(ap * bq + bp * aq, aq * bq, r);
    case '-': return verify_rational(ap * bq - bp * aq, aq * bq, r);
    case '*': return verify_rational(ap * bp, aq * bq, r);
    default: return verify_rational(ap * bq, aq * bp, r);
    }
}

/* The operator at e->at as one of + - * / ( ) =, or 0 if there is none; *width is its length in bytes. */
static inline char verify_operator(VerifyExpression *e, size_t *width) {
    static const struct {
        const char *sign, op;
    } signs[] = {{"+", '+'}, {"-", '-'},      {"*", '*'},      {"/", '/'},      {"(", '('},
                 {")", ')'}, {"\u2212", '-'}, {"\u00d7", '*'}, {"\u00f7", '/'}, {"=", '='}};
    while (e->at < e->text.n && verify_space(e->text.s[e->at])) e->at++;
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        if (verify_starts(e->text, e->at, signs[i].sign)) {
            *width = strlen(signs[i].sign);
            return signs[i].op;
        }
    return 0;
}

/* sum = product { (+|-) product };  product = factor { (*|/) factor };  factor = {-} (number | "(" sum ")") */
static inline bool verify_sum(VerifyExpression *e, VerifyRational *value);

static inline bool verify_factor(VerifyExpression *e, VerifyRational *value) {
    size_t width;
    bool negative = false;
    char op;
    while ((op = verify_operator(e, &width)) == '-') {
        e->at += width;
        negative = !negative;
    }
    if (op == '(') {
        e->at += width;
        if (++e->depth > VERIFY_DEPTH || !verify_sum(e, value) || verify_operator(e, &width) != ')') return false;
        e->at += width;
        e->depth--;
    } else {
        const size_t end = verify_digits_end(e->text, e->at);
        int64_t number = 0;
        if (end == e->at || e->count == VERIFY_OPERANDS) return false;
        for (; e->at < end; e->at++)
            if (__builtin_mul_overflow(number, (int64_t)10, &number) ||
                __builtin_add_overflow(number, (int64_t)(e->text.s[e->at] - '0'), &number))
                return false;
        e->operands[e->count++] = number;
        *value = (VerifyRational){number, 1};
    }
    if (negative) value->p = -value->p;
    return true;
}

static inline bool verify_product(VerifyExpression *e, VerifyRational *value) {
    size_t width;
    char op;
    if (!verify_factor(e, value)) return false;
    while ((op = verify_operator(e, &width)) == '*' || op == '/') {
        VerifyRational right;
        e->at += width;
        if (!verify_factor(e, &right) || !verify_operate(*value, op, right, value)) return false;
    }
    return true;
}

static inline bool verify_sum(VerifyExpression *e, VerifyRational *value) {
    size_t width;
    char op;
    if (!verify_product(e, value)) return false;
    while ((op = verify_operator(e, &width)) == '+' || op == '-') {
        VerifyRational right;
        e->at += width;
        if (!verify_product(e, &right) || !verify_operate(*value, op, right, value)) return false;
    }
    return true;
}

/* Parses all of `text` as an expression, optionally followed by "= value"; e->operands are those of the expression. */
static inline bool verify_expression(VerifySpan text, VerifyExpression *e, VerifyRational *value) {
    size_t width;
    *e = (VerifyExpression){.text = text};
    if (!verify_sum(e, value)) return false;
    if (verify_operator(e, &width) == '=') {
        VerifyExpression stated = {.text = text, .at = e->at + width};
        VerifyRational said;
        if (!verify_sum(&stated, &said) || said.p != value->p || said.q != value->q) return false;
        verify_operator(&stated, &width);
        return stated.at == text.n;
    }
    return e->at == text.n;
}

static inline bool verify_final_expression(const char *completion, VerifyExpression *e, VerifyRational *value) {
    VerifyMark mark;
    return verify_expression(verify_last_line(verify_final(completion, &mark)), e, value);
}

static inline bool verify_print_rational(VerifyRational r, char *out) {
    return verify_print_fraction(r.p < 0, (unsigned __int128)(r.p < 0 ? -r.p : r.p), (unsigned __int128)r.q, out);
}

static inline float verify_countdown(const RewardInput *in, const json_t *fields) {
    const json_t *numbers = json_object_get(fields, "numbers"), *target = json_object_get(fields, "target");
    if (!numbers) numbers = json_object_get(fields, "nums");
    const size_t given = json_array_size(numbers);
    char wanted[VERIFY_NUMBER_SIZE], reached[VERIFY_NUMBER_SIZE];
    bool fraction, taken[VERIFY_OPERANDS] = {false};
    if (!given || given > VERIFY_OPERANDS) return NAN;
    if (json_is_integer(target)) snprintf(wanted, sizeof wanted, "%lld", (long long)json_integer_value(target));
    else if (!verify_final_number(in->answer, false, false, wanted, &fraction)) return NAN;
    VerifyExpression e;
    VerifyRational value;
    if (!verify_final_expression(in->completion, &e, &value)) return 0;
    for (int i = 0; i < e.count; i++) {
        size_t k = 0;
        while (k < given && (taken[k] || json_integer_value(json_array_get(numbers, k)) != e.operands[i] ||
                             !json_is_integer(json_array_get(numbers, k))))
            k++;
        if (k == given) return 0;
        taken[k] = true;
    }
    return verify_print_rational(value, reached) && !strcmp(wanted, reached) ? 1 : 0;
}

/* ---- brackets -------------------------------------------------------------------------------------------------- */

/* Writes the last line of the completion to out[size], without white space. */
static inline bool verify_final_closers(const char *completion, char *out, size_t size) {
    VerifyMark mark;
    const VerifySpan t = verify_last_line(verify_final(completion, &mark));
    size_t n = 0;
    for (size_t i = 0; i < t.n; i++) {
        if (verify_space(t.s[i])) continue;
        if (n + 1 >= size) return false;
        out[n++] = t.s[i];
    }
    out[n] = 0;
    return n > 0;
}

static inline char verify_closer(char open) {
    return open == '(' ? ')' : open == '[' ? ']' : open == '{' ? '}' : open == '<' ? '>' : 0;
}

/* Writes the closers that balance `open` (brackets only, NUL-terminated) to out[strlen(open) + 1]; false if no balanced
 * string starts with `open`. `out` also holds the stack of expected closers. */
static inline bool verify_close(const char *open, char *out) {
    size_t depth = 0;
    for (; *open; open++) {
        const char closer = verify_closer(*open);
        if (closer) out[depth++] = closer;
        else if (!depth || out[--depth] != *open) return false;
    }
    out[depth] = 0;
    for (size_t i = 0; i < depth / 2; i++) {
        const char c = out[i];
        out[i] = out[depth - 1 - i];
        out[depth - 1 - i] = c;
    }
    return true;
}

/* Right if `open` followed by the completion is balanced and the completion opens no new bracket. */
static inline float verify_brackets(const RewardInput *in, const json_t *fields) {
    const char *open = json_string_value(json_object_get(fields, "open"));
    VerifySpan wanted = verify_trim(verify_span(in->answer));
    char *closers = NULL;
    if (open) {
        closers = (char *)xmalloc(strlen(open) + 1);
        if (verify_close(open, closers)) wanted = verify_span(closers);
        else wanted.n = 0;
    }
    float score = NAN;
    if (wanted.n) {
        const size_t size = strlen(in->completion ? in->completion : "") + 1;
        char *given = (char *)xmalloc(size);
        score = verify_final_closers(in->completion, given, size) && verify_same(verify_span(given), wanted) ? 1 : 0;
        free(given);
    }
    free(closers);
    return score;
}

/* ---- patterns -------------------------------------------------------------------------------------------------- */

typedef struct VerifyRegex {
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *context;
} VerifyRegex;

static inline void verify_regex_free(VerifyRegex *r) {
    pcre2_match_context_free(r->context);
    pcre2_match_data_free(r->data);
    pcre2_code_free(r->code);
    *r = (VerifyRegex){NULL, NULL, NULL};
}

/* Compiles a PCRE2 pattern (UTF-8; invalid UTF-8 in a subject matches nothing but is not an error). `options` are
 * PCRE2's. */
static inline bool verify_regex_compile(VerifyRegex *r, const char *pattern, uint32_t options, Error *e) {
    int code;
    PCRE2_SIZE at;
    *r = (VerifyRegex){NULL, NULL, NULL};
    r->code = pcre2_compile((PCRE2_SPTR)pattern, strlen(pattern),
                            options | PCRE2_UTF | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if (!r->code) {
        PCRE2_UCHAR text[200];
        pcre2_get_error_message(code, text, sizeof text);
        return error_set(e, "pattern /%.200s/: %s at byte %zu", pattern, (const char *)text, (size_t)at);
    }
    r->data = pcre2_match_data_create(1, NULL);
    r->context = pcre2_match_context_create(NULL);
    if (!r->data || !r->context) die("out of memory: PCRE2 match data");
    pcre2_set_heap_limit(r->context, 16384); /* KiB */
    return true;
}

/* 1 if the pattern is found, 0 if not, NaN if the search hit its limit. PCRE2 restarts the count of backtracks at every
 * starting point, so the limit shrinks as the text grows: about 10^7 steps (a tenth of a second) in total. */
static inline float verify_regex_match(const VerifyRegex *r, const char *text) {
    const size_t n = strlen(text);
    const size_t limit = 10000000 / (n + 1);
    pcre2_set_match_limit(r->context, limit < 1000 ? 1000 : limit > 1000000 ? 1000000 : (uint32_t)limit);
    const int rc = pcre2_match(r->code, (PCRE2_SPTR)text, n, 0, 0, r->data, r->context);
    return rc >= 0 ? 1 : rc == PCRE2_ERROR_NOMATCH ? 0 : NAN;
}

static inline float verify_regex(const RewardInput *in, const json_t *fields) {
    const char *pattern = json_string_value(json_object_get(fields, "pattern"));
    VerifyRegex r;
    if (!pattern) pattern = in->answer ? in->answer : "";
    if (!pattern[0] || !verify_regex_compile(&r, pattern, 0, NULL)) return NAN;
    const float score = verify_regex_match(&r, in->completion ? in->completion : "");
    verify_regex_free(&r);
    return score;
}

/* ---- all checks ------------------------------------------------------------------------------------------------ */

static inline float verify_exact(const RewardInput *in) {
    VerifyMark mark;
    VerifySpan all = verify_span(in->completion);
    const VerifySpan answer = verify_trim(verify_span(in->answer)), stated = verify_final(in->completion, &mark);
    if (!answer.n) return NAN;
    return verify_same(verify_trim(all), answer) || verify_same(stated, answer) ? 1 : 0;
}

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

static inline float verify_sort(const RewardInput *in) {
    const size_t size = 2 * strlen(in->answer ? in->answer : "") + VERIFY_NUMBER_SIZE;
    char *wanted = (char *)xmalloc(2 * size), *given = wanted + size;
    float score = NAN;
    if (verify_final_list(in->answer, wanted, size))
        score = verify_final_list(in->completion, given, size) && !strcmp(wanted, given) ? 1 : 0;
    free(wanted);
    return score;
}

/* The score (1, 0 or NaN) of one kind of check, independent of the record's task. */
static inline float verify_score(const RewardInput *in, VerifyKind kind) {
    if (kind == VERIFY_AUTO) kind = verify_is_number(in->answer) ? VERIFY_NUMERIC : VERIFY_EXACT;
    json_t *fields = verify_fields(in);
    float score = NAN;
    switch (kind) {
    case VERIFY_NUMERIC: score = verify_numeric(in, fields, false); break;
    case VERIFY_HASH: score = verify_numeric(in, fields, true); break;
    case VERIFY_COUNTDOWN: score = verify_countdown(in, fields); break;
    case VERIFY_SORT: score = verify_sort(in); break;
    case VERIFY_BRACKETS: score = verify_brackets(in, fields); break;
    case VERIFY_REGEX: score = verify_regex(in, fields); break;
    default: score = verify_exact(in);
    }
    json_decref(fields);
    return score;
}

/* Scores by the check of the record's task: *score is 1, 0 or NaN. False if the task's name is unknown. */
static inline bool rewards_verify(const RewardInput *in, float *score) {
    const int kind = verify_kind(in->task);
    if (kind < 0) return false;
    *score = verify_score(in, (VerifyKind)kind);
    return true;
}

/* Writes the completion's final answer in canonical form to answer[size]: completions with the same answer give the
 * same text (a number, a list, the value of an expression, closers; otherwise the trimmed text). Respects the record's
 * style. False if there is no final answer or it does not fit. */
static inline bool rewards_answer(const RewardInput *in, char *answer, size_t size) {
    char number[VERIFY_NUMBER_SIZE];
    bool fraction;
    VerifyMark mark;
    VerifyExpression e;
    VerifyRational value;
    json_t *fields = NULL;
    const int kind = verify_kind(in->task);
    bool found = false;
    number[0] = 0;
    switch (kind) {
    case VERIFY_NUMERIC:
    case VERIFY_HASH:
    case VERIFY_AUTO: {
        fields = verify_fields(in);
        const char *style = json_string_value(json_object_get(fields, "style"));
        const bool hash_only = kind == VERIFY_HASH || (style && !strcmp(style, "scratchpad"));
        found = verify_final_number(in->completion, hash_only, style && !strcmp(style, "reversed"), number, &fraction);
        if (!found && kind == VERIFY_AUTO) break;
        json_decref(fields);
        return found && verify_copy(verify_span(number), answer, size);
    }
    case VERIFY_COUNTDOWN:
        return verify_final_expression(in->completion, &e, &value) && verify_print_rational(value, number) &&
               verify_copy(verify_span(number), answer, size);
    case VERIFY_SORT: return verify_final_list(in->completion, answer, size);
    case VERIFY_BRACKETS: return verify_final_closers(in->completion, answer, size);
    default: break;
    }
    json_decref(fields);
    const VerifySpan t = verify_final(in->completion, &mark);
    return t.n && verify_copy(t, answer, size);
}

/* The same without a record, and therefore without a style: numbers are read as written. */
static inline bool reward_final_answer(const char *completion, const char *task, char *answer, size_t size) {
    const RewardInput in = {.completion = completion, .task = task};
    return rewards_answer(&in, answer, size);
}

#endif
