/* code_value.h - what a test of a program expects: values and outputs, compared outside the sandbox.
 *
 * A value is written by the runner (../sandbox/runner.py) as JSON: null, true, false, an integer of 64 bits, "text", or a pair
 *
 *     ["i", "0x..."]    a larger integer             ["f", "0x1.8p+0"]   a float, as float.hex() writes it
 *     ["u", "hex"]      a text with surrogates       ["y", "hex"]        bytes
 *     ["l", [...]]      a list                       ["t", [...]]        a tuple
 *     ["s", [...]]      a set or frozenset           ["d", [[k, v], ...]] a dict
 *
 * Values are equal if Python's == says so for these types: 1, 1.0 and True are equal, a list and a tuple are not, sets and
 * dicts have no order. A value of any other form, which a program that has changed the runner may send, is equal to nothing.
 *
 *     json_t *got = json_loads("[\"l\",[1,2]]", 0, NULL), *want = json_loads("[\"l\",[1,[\"f\",\"0x1p+1\"]]]", 0, NULL);
 *     const CodeCompare exact = {0};
 *     if (code_value_equal(got, want, &exact)) puts("[1, 2] == [1, 2.0]");
 *     json_decref(got), json_decref(want);
 *
 * Outputs are equal if their lines are, without trailing white space and empty last lines, or if the lines have the same
 * words, of which decimal numbers are compared by value (LiveCodeBench, testing_util.py), or within a relative tolerance.
 */
#ifndef LLMC_REWARD_CODE_VALUE_H
#define LLMC_REWARD_CODE_VALUE_H

#include "code_extract.h"  /* code_line */
#include "verify_answer.h" /* VerifySpan, verify_copy, verify_digit, verify_same, ... */
#include <math.h>

typedef struct CodeCompare {
    bool loose;       /* a list and a tuple with equal elements are equal */
    double tolerance; /* relative, of floats; 0: exact */
    int64_t steps;    /* comparisons so far, of which a hostile set or dict may take at most CODE_STEPS */
} CodeCompare;

enum { CODE_STEPS = 20000000, CODE_DEPTH = 80 };

/* ---- numbers ------------------------------------------------------------------------------------------------------- */

typedef struct CodeNumber {
    enum { CODE_NOT_A_NUMBER, CODE_SMALL, CODE_LARGE, CODE_FLOAT } kind;
    json_int_t integer;
    const char *large; /* "0x..." or "-0x..." */
    double real;
} CodeNumber;

/* The tag of a pair, or 0. */
static inline char code_tag_of(const json_t *value) {
    const char *tag = json_array_size(value) == 2 ? json_string_value(json_array_get(value, 0)) : NULL;
    return tag && strlen(tag) == 1 ? *tag : 0;
}

static inline const json_t *code_content(const json_t *value) { return json_array_get(value, 1); }

/* Whether a text is a large integer as the runner writes it: no zero before it, so that equal numbers have equal texts. */
static inline bool code_is_large(const char *text) {
    if (!text) return false;
    text += *text == '-';
    return !strncmp(text, "0x", 2) && text[2] != '0' && strlen(text + 2) >= 16 &&
           strspn(text + 2, "0123456789abcdef") == strlen(text + 2);
}

static inline CodeNumber code_number(const json_t *value) {
    CodeNumber n = {0};
    const char *text = json_string_value(code_content(value));
    char *end;
    if (json_is_boolean(value) || json_is_integer(value)) {
        n.kind = CODE_SMALL;
        n.integer = json_is_integer(value) ? json_integer_value(value) : json_is_true(value);
        n.real = (double)n.integer;
    } else if (code_tag_of(value) == 'i' && code_is_large(text)) {
        n.kind = CODE_LARGE;
        n.large = text;
        n.real = strtod(text, NULL);
    } else if (code_tag_of(value) == 'f' && text && *text) {
        n.real = strtod(text, &end);
        if (!*end) n.kind = CODE_FLOAT;
    }
    return n;
}

/* The hexadecimal digits of a float that is an integer of at least 2^63, as code_is_large() has them. */
static inline void code_large_of(double real, char text[300]) {
    int exponent;
    const double fraction = frexp(fabs(real), &exponent);
    const uint64_t mantissa = (uint64_t)ldexp(fraction, 53);
    const int shift = (exponent - 53) % 4, zeros = (exponent - 53) / 4;
    int n = sprintf(text, "%s0x%llx", real < 0 ? "-" : "", (unsigned long long)(mantissa << shift));
    for (int i = 0; i < zeros; i++) text[n++] = '0';
    text[n] = 0;
}

/* Whether two numbers are equal, exactly. */
static inline bool code_numbers_equal(const CodeNumber *a, const CodeNumber *b) {
    if (a->kind > b->kind) {
        const CodeNumber *held = a;
        a = b;
        b = held;
    }
    if (b->kind != CODE_FLOAT) {
        if (a->kind != b->kind) return false;
        return a->kind == CODE_SMALL ? a->integer == b->integer : !strcmp(a->large, b->large);
    }
    if (a->kind == CODE_FLOAT) return a->real == b->real;
    if (isnan(b->real) || isinf(b->real) || b->real != floor(b->real)) return false;
    const bool small = fabs(b->real) < 0x1p63 || b->real == -0x1p63;
    if (a->kind == CODE_SMALL) return small && (json_int_t)b->real == a->integer;
    char text[300];
    if (small) return false;
    code_large_of(b->real, text);
    return !strcmp(text, a->large);
}

/* math.isclose() with finite numbers; relative to the larger one. */
static inline bool code_close(double a, double b, double relative, double absolute) {
    if (a == b) return true;
    if (isnan(a) || isnan(b) || isinf(a) || isinf(b)) return false;
    return fabs(a - b) <= fmax(relative * fmax(fabs(a), fabs(b)), absolute);
}

/* ---- values -------------------------------------------------------------------------------------------------------- */

static inline bool code_equal(const json_t *a, const json_t *b, CodeCompare *how, int depth);

static inline bool code_sequences_equal(const json_t *a, const json_t *b, CodeCompare *how, int depth) {
    const size_t n = json_array_size(a);
    if (json_array_size(b) != n) return false;
    for (size_t i = 0; i < n; i++)
        if (!code_equal(json_array_get(a, i), json_array_get(b, i), how, depth + 1)) return false;
    return true;
}

/* Whether each element of b is in a, which has as many. Both are usually in the same order. pairs: of a key and a value. */
static inline bool code_sets_equal(const json_t *a, const json_t *b, bool pairs, CodeCompare *how, int depth) {
    const size_t n = json_array_size(a);
    if (json_array_size(b) != n) return false;
    for (size_t i = 0; i < n; i++) {
        const json_t *want = json_array_get(b, i);
        bool found = false;
        for (size_t k = 0; !found && k < n; k++) {
            const json_t *got = json_array_get(a, (i + k) % n);
            found = pairs ? json_array_size(got) == 2 && json_array_size(want) == 2 &&
                                code_sequences_equal(got, want, how, depth)
                          : code_equal(got, want, how, depth + 1);
        }
        if (!found) return false;
    }
    return true;
}

static inline bool code_equal(const json_t *a, const json_t *b, CodeCompare *how, int depth) {
    if (depth > CODE_DEPTH || how->steps++ > CODE_STEPS || !a || !b) return false;
    const CodeNumber x = code_number(a), y = code_number(b);
    if (x.kind && y.kind)
        return code_numbers_equal(&x, &y) || (how->tolerance > 0 && (x.kind == CODE_FLOAT || y.kind == CODE_FLOAT) &&
                                              code_close(x.real, y.real, how->tolerance, 0));
    if (x.kind || y.kind) return false;
    if (json_is_null(a) || json_is_null(b)) return json_is_null(a) && json_is_null(b);
    if (json_is_string(a) || json_is_string(b)) return json_equal(a, b);
    char s = code_tag_of(a), t = code_tag_of(b);
    if (how->loose) {
        if (s == 't') s = 'l';
        if (t == 't') t = 'l';
    }
    if (s != t) return false;
    const json_t *left = code_content(a), *right = code_content(b);
    if (s == 'u' || s == 'y') return json_is_string(left) && json_equal(left, right);
    if (!json_is_array(left) || !json_is_array(right)) return false;
    if (s == 'l' || s == 't') return code_sequences_equal(left, right, how, depth);
    return (s == 's' || s == 'd') && code_sets_equal(left, right, s == 'd', how, depth);
}

/* Whether two values are equal. */
static inline bool code_value_equal(const json_t *got, const json_t *want, const CodeCompare *how) {
    CodeCompare count = *how;
    count.steps = 0;
    return code_equal(got, want, &count, 0);
}

/* bool(value): 1 or 0, or -1 if it is no value. */
static inline int code_truth(const json_t *value) {
    const CodeNumber n = code_number(value);
    if (n.kind) return n.kind == CODE_LARGE || n.real != 0;
    if (json_is_null(value)) return 0;
    if (json_is_string(value)) return json_string_length(value) > 0;
    const json_t *content = code_content(value);
    const char tag = code_tag_of(value);
    if (tag == 'u' || tag == 'y') return json_string_length(content) > 0;
    return tag && strchr("ltsd", tag) && json_is_array(content) ? json_array_size(content) > 0 : -1;
}

/* Whether a value passes a test of the runner's translation: its op, value, and tolerances abs and rel. */
static inline bool code_value_passes(const json_t *got, const json_t *test, const CodeCompare *how) {
    const char *op = json_string_value(json_object_get(test, "op"));
    const json_t *want = json_object_get(test, "value");
    if (!got || !op) return false;
    if (!strcmp(op, "true") || !strcmp(op, "false")) return code_truth(got) == (op[0] == 't');
    if (code_truth(got) < 0) return false;
    if (!strcmp(op, "eq")) return code_value_equal(got, want, how);
    if (!strcmp(op, "ne")) return !code_value_equal(got, want, how);
    if (!strcmp(op, "is") || !strcmp(op, "is_not")) {
        const bool same = json_typeof(got) == json_typeof(want); /* None, True or False */
        return same == !strcmp(op, "is");
    }
    if (!strcmp(op, "in")) {
        for (size_t i = 0; i < json_array_size(code_content(want)); i++)
            if (code_value_equal(got, json_array_get(code_content(want), i), how)) return true;
        return false;
    }
    const CodeNumber a = code_number(got), b = code_number(want);
    const char *absolute = json_string_value(json_object_get(test, "abs")),
               *relative = json_string_value(json_object_get(test, "rel"));
    if (!a.kind || !b.kind || !absolute || !relative) return false;
    const double gap = fabs(a.real - b.real), most = strtod(absolute, NULL);
    if (!strcmp(op, "lt")) return gap < most;
    if (!strcmp(op, "le")) return gap <= most;
    return !strcmp(op, "close") && code_close(a.real, b.real, strtod(relative, NULL), most);
}

/* A JSON value of a data set as the runner would write it; a new reference. */
static inline json_t *code_value_of_json(const json_t *value) {
    char text[64];
    if (json_is_real(value)) {
        snprintf(text, sizeof text, "%a", json_real_value(value));
        return json_pack("[s,s]", "f", text);
    }
    if (json_is_array(value)) {
        json_t *list = json_array();
        for (size_t i = 0; i < json_array_size(value); i++)
            json_array_append_new(list, code_value_of_json(json_array_get(value, i)));
        return json_pack("[s,o]", "l", list);
    }
    if (json_is_object(value)) {
        json_t *pairs = json_array(), *item;
        const char *key;
        json_object_foreach((json_t *)value, key, item) {
            json_array_append_new(pairs, json_pack("[s,o]", key, code_value_of_json(item)));
        }
        return json_pack("[s,o]", "d", pairs);
    }
    return json_deep_copy(value);
}

/* ---- outputs ------------------------------------------------------------------------------------------------------- */

/* A decimal number as its significant digits and the power of ten of the last one. */
typedef struct CodeDecimal {
    bool negative;
    char digit[64];
    int digits;
    long power;
} CodeDecimal;

/* Reads [+-]digits[.digits][e[+-]digits], all of it; false if it is something else or has more than 64 digits. */
static inline bool code_decimal(VerifySpan t, CodeDecimal *d) {
    size_t i = 0;
    bool any = false, point = false;
    *d = (CodeDecimal){0};
    if (i < t.n && (t.s[i] == '-' || t.s[i] == '+')) d->negative = t.s[i++] == '-';
    for (; i < t.n && (verify_digit(t.s[i]) || (t.s[i] == '.' && !point)); i++) {
        if (t.s[i] == '.') {
            point = true;
            continue;
        }
        any = true;
        d->power -= point;
        if (!d->digits && t.s[i] == '0') continue;
        if (d->digits == (int)sizeof d->digit) return false;
        d->digit[d->digits++] = t.s[i];
    }
    if (!any) return false;
    if (i < t.n && (t.s[i] == 'e' || t.s[i] == 'E')) {
        const size_t sign = i + 1 < t.n && (t.s[i + 1] == '-' || t.s[i + 1] == '+');
        const size_t from = i + 1 + sign;
        long power = 0;
        if (from == t.n || t.n - from > 6) return false;
        for (i = from; i < t.n && verify_digit(t.s[i]); i++) power = 10 * power + (t.s[i] - '0');
        d->power += t.s[from - 1] == '-' ? -power : power;
    }
    while (d->digits && d->digit[d->digits - 1] == '0') {
        d->digits--;
        d->power++;
    }
    if (!d->digits) d->power = d->negative = 0;
    return i == t.n;
}

static inline bool code_words_equal(VerifySpan a, VerifySpan b, double tolerance) {
    CodeDecimal x, y;
    if (verify_same(a, b)) return true;
    if (!code_decimal(a, &x) || !code_decimal(b, &y)) return false;
    if (x.negative == y.negative && x.power == y.power && x.digits == y.digits &&
        !memcmp(x.digit, y.digit, (size_t)x.digits))
        return true;
    if (tolerance <= 0) return false;
    char text[2][128];
    return verify_copy(a, text[0], sizeof text[0]) && verify_copy(b, text[1], sizeof text[1]) &&
           code_close(strtod(text[0], NULL), strtod(text[1], NULL), tolerance, 0);
}

/* Takes a word from the beginning of a line. */
static inline bool code_word(VerifySpan *line, VerifySpan *word) {
    *line = verify_trim(*line);
    word->s = line->s;
    for (word->n = 0; word->n < line->n && !verify_space(line->s[word->n]);) word->n++;
    line->s += word->n;
    line->n -= word->n;
    return word->n > 0;
}

static inline bool code_lines_equal(VerifySpan a, VerifySpan b, double tolerance) {
    VerifySpan x, y;
    if (verify_same(a, b)) return true;
    for (;;) {
        const bool more = code_word(&a, &x);
        if (more != code_word(&b, &y)) return false;
        if (!more) return true;
        if (!code_words_equal(x, y, tolerance)) return false;
    }
}

/* The text without white space at its end. */
static inline VerifySpan code_without_end(VerifySpan t) {
    while (t.n && verify_space(t.s[t.n - 1])) t.n--;
    return t;
}

/* Whether an output is the expected one. */
static inline bool code_output_equal(VerifySpan got, VerifySpan want, double tolerance) {
    VerifySpan a, b;
    got = code_without_end(got);
    want = code_without_end(want);
    for (;;) {
        const bool more = code_line(&got, &a);
        if (more != code_line(&want, &b)) return false;
        if (!more) return true;
        if (!code_lines_equal(code_without_end(a), code_without_end(b), tolerance)) return false;
    }
}

#endif
