/* verify_math.h - comparison of mathematical answers that are no single number: the check of MATH-style answers.
 *
 * An answer is brought into a canonical text, and two answers are equal if their texts are:
 *
 *   number            its value (verify_number.h), without units, percent and degree signs
 *   `(a, b)` `[a, b)` the elements in their order, with the brackets
 *   `\{a, b\}` `a, b` the elements sorted; `and` and `or` separate too
 *   `a \cup b`        the sets, sorted
 *   `x = a` `x \in a` a, if x is one letter or a function of one; other equations are their two sides, sorted
 *   `a + b - c`       the terms, sorted with their signs
 *   `\frac{a}{b}`     the numerator and the denominator; `a/b`, `\dfrac`, `\frac12` and `\sqrt2` are read alike
 *   anything else     the text of verify_plain.h without spaces, `*`, `$` and redundant braces and parentheses
 *
 * So `\left( 3, \dfrac{\pi}{2} \right)` = `(3,\pi/2)` and `1 + 2\sqrt{3}` = `2 \sqrt 3+1`, but expressions are not
 * simplified: `\sqrt{12}` is not `2\sqrt{3}`.
 *
 * The part of a completion that is compared is its final answer (verify_answer.h); without a mark it is what follows the
 * last `answer is` or `answer:` on its line, or else the last formula between dollar signs, or the whole text.
 *
 * Limits: parts nest at most 12 deep and a list or sum has at most 64 parts; what exceeds that is compared as text. A
 * text of more than 4,096 bytes equals only itself.
 *
 *     TextBuffer out = {0};
 *     verify_math_canonical(verify_span("\\left(3, \\dfrac{\\pi}{2}\\right)"), &out);
 *     puts(out.text);                                                         // (3,\pi/2)
 *     text_free(&out);
 */
#ifndef LLMC_REWARD_VERIFY_MATH_H
#define LLMC_REWARD_VERIFY_MATH_H

#include "../base/text.h"    /* text_append, TextBuffer, text_string, text_free */
#include "verify_answer.h"   /* VerifySpan, verify_letter, verify_space, verify_starts, ... */
#include "verify_number.h"   /* verify_at, verify_blank, verify_letters_end, VerifyNumber, ... */
#include "verify_plain.h"    /* PLAIN_OPEN, PLAIN_CLOSE, PLAIN_DEGREE, verify_plain */
#include "verify_rational.h" /* VERIFY_NUMBER_SIZE, rational_available, rational_print */

enum { MATH_DEPTH = 12, MATH_PARTS = 64, MATH_BYTES = 4096 };

static inline void math_canonical(VerifySpan t, int depth, TextBuffer *out);

/* Removes blanks, and a final full stop, on both sides. */
static inline VerifySpan math_trim(VerifySpan t) {
    for (;;) {
        const size_t n = t.n;
        while (t.n && (verify_blank(t.s[0]) || verify_space(t.s[0]))) t = (VerifySpan){t.s + 1, t.n - 1};
        while (t.n && (verify_blank(t.s[t.n - 1]) || verify_space(t.s[t.n - 1]) || t.s[t.n - 1] == '.')) t.n--;
        if (t.n == n) return t;
    }
}

static inline int math_bracket(char c) {
    if (c == '(' || c == '[' || c == '{' || c == PLAIN_OPEN) return 1;
    return c == ')' || c == ']' || c == '}' || c == PLAIN_CLOSE ? -1 : 0;
}

/* The index of the bracket that closes the one at i, or t.n. */
static inline size_t math_close(VerifySpan t, size_t i) {
    int open = 0;
    for (; i < t.n; i++) {
        open += math_bracket(t.s[i]);
        if (!open) return i;
    }
    return i;
}

typedef struct MathPart {
    VerifySpan t;
    char sign;  /* of a sum's term: + or - */
    char *text; /* canonical */
} MathPart;

static inline int math_compare(const void *a, const void *b) {
    return strcmp(((const MathPart *)a)->text, ((const MathPart *)b)->text);
}

/* The length of the separator at i: of a list (`,` `;` and, or), of a union, or of the terms of a sum. */
static inline size_t math_separator(VerifySpan t, size_t i, char kind) {
    const char c = t.s[i];
    if (kind == 'u') return verify_starts(t, i, "\\cup") && !verify_letter(verify_at(t, i + 4)) ? 4 : 0;
    if (kind == '+') {
        const size_t before = verify_skip_back(t, i);
        const char last = before ? t.s[before - 1] : '+';
        return (c == '+' || c == '-') && before && !strchr("+-*/^=<>", last);
    }
    if (c == ',' || c == ';') return 1;
    const size_t end = verify_letters_end(t, i);
    const bool word = !i || (!verify_letter(t.s[i - 1]) && t.s[i - 1] != '\\');
    return word && ((end - i == 3 && !memcmp(t.s + i, "and", 3)) || (end - i == 2 && !memcmp(t.s + i, "or", 2)))
               ? end - i
               : 0;
}

/* Divides t at its separators outside brackets. Empty parts are left out. Returns the number of parts, or 0 if there are
 * too many. */
static inline int math_split(VerifySpan t, char kind, MathPart part[MATH_PARTS]) {
    int count = 0, open = 0;
    size_t from = 0;
    char sign = '+';
    for (size_t i = 0, n; i <= t.n; i++) {
        n = i == t.n ? 1 : open > 0 || math_bracket(t.s[i]) ? 0 : math_separator(t, i, kind);
        if (i < t.n) open += math_bracket(t.s[i]);
        if (!n) continue;
        const VerifySpan found = math_trim((VerifySpan){t.s + from, i - from});
        if (found.n && count == MATH_PARTS) return 0;
        if (found.n) part[count++] = (MathPart){found, sign, NULL};
        if (i < t.n) sign = t.s[i];
        from = i + n;
        i += n - 1;
    }
    return count;
}

/* Writes the parts, sorted if they have no order, between `open` and `close` (0: nothing). */
static inline void math_join(MathPart *part, int count, bool sorted, char open, char close, char kind, int depth,
                             TextBuffer *out) {
    for (int i = 0; i < count; i++) {
        TextBuffer text = {0};
        if (kind == '+') text_append(&text, &part[i].sign, 1);
        math_canonical(part[i].t, depth + 1, &text);
        part[i].text = text.text;
    }
    if (sorted) qsort(part, (size_t)count, sizeof *part, math_compare);
    if (open) text_append(out, &open, 1);
    for (int i = 0; i < count; i++) {
        if (i && kind != '+') text_string(out, kind == 'u' ? "\\cup" : ",");
        text_string(out, part[i].text + (!i && kind == '+' && part[i].text[0] == '+'));
        free(part[i].text);
    }
    if (close) text_append(out, &close, 1);
}

/* Writes the argument of a command at i, `{...}` or one character, in parentheses if it has more than one part. Returns
 * its end. */
static inline size_t math_argument(VerifySpan t, size_t i, int depth, TextBuffer *out) {
    while (verify_at(t, i) == ' ') i++;
    if (i >= t.n) return t.n;
    const size_t close = t.s[i] == '{' ? math_close(t, i) : i;
    size_t end = close < t.n ? close + 1 : t.n;
    if (t.s[i] == '\\') end = verify_letters_end(t, i + 1);
    const VerifySpan inside = t.s[i] == '{' ? (VerifySpan){t.s + i + 1, close - i - 1} : (VerifySpan){t.s + i, end - i};
    TextBuffer text = {0};
    math_canonical(inside, depth + 1, &text);
    const bool several = text.length > 1 && strpbrk(text.text + 1, "+-/,");
    text_string(out, several ? "(" : "");
    text_append(out, text.text, text.length);
    text_string(out, several ? ")" : "");
    text_free(&text);
    return end;
}

/* Writes a product: its commands' arguments in one form, without spaces and signs of multiplication. */
static inline void math_product(VerifySpan t, int depth, TextBuffer *out) {
    for (size_t i = 0; i < t.n;) {
        const char c = t.s[i];
        if (verify_starts(t, i, "\\frac") && !verify_letter(verify_at(t, i + 5))) {
            i = math_argument(t, i + 5, depth, out);
            text_string(out, "/");
            i = math_argument(t, i, depth, out);
        } else if (verify_starts(t, i, "\\sqrt") && !verify_letter(verify_at(t, i + 5))) {
            text_string(out, "\\sqrt{");
            i += 5;
            if (verify_at(t, i) == '[') {
                const size_t close = math_close(t, i);
                text_append(out, t.s + i, close - i);
                text_string(out, "]");
                i = close < t.n ? close + 1 : t.n;
            }
            i = math_argument(t, i, depth, out);
            text_string(out, "}");
        } else if (c == '^' || c == '_') {
            text_append(out, &c, 1);
            i = math_argument(t, i + 1, depth, out);
        } else if (math_bracket(c) > 0) {
            const size_t close = math_close(t, i);
            TextBuffer inside = {0};
            math_canonical((VerifySpan){t.s + i + 1, close - i - 1}, depth + 1, &inside);
            const bool braces = c == '{';
            if (!braces) text_append(out, &c, 1);
            text_append(out, inside.text, inside.length);
            if (!braces && close < t.n) text_append(out, t.s + close, 1);
            text_free(&inside);
            i = close < t.n ? close + 1 : t.n;
        } else {
            if (!verify_blank(c) && !verify_space(c) && c != '*' && c != PLAIN_DEGREE && c != '%')
                text_append(out, &c, 1);
            i++;
        }
    }
}

/* Removes `x =`, `f(x) =` or `x \in` from the beginning. */
static inline VerifySpan math_value(VerifySpan t) {
    const char *equals = (const char *)memchr(t.s, '=', t.n), *in = (const char *)memmem(t.s, t.n, "\\in ", 4);
    const char *at = equals && (!in || equals < in) ? equals : in;
    if (!at || (equals && memrchr(t.s, '=', t.n) != equals)) return t;
    const VerifySpan name = math_trim((VerifySpan){t.s, (size_t)(at - t.s)});
    const bool letter = name.n && verify_letter(name.s[0]);
    const bool function = letter && name.n == 4 && name.s[1] == '(' && name.s[3] == ')';
    const bool indexed = letter && name.n == 3 && name.s[1] == '_';
    if (!(letter && name.n == 1) && !function && !indexed) return t;
    const size_t after = (size_t)(at - t.s) + (at == equals ? 1 : 4);
    return math_trim((VerifySpan){t.s + after, t.n - after});
}

/* Appends the canonical text of the plain text t. */
static inline void math_canonical(VerifySpan t, int depth, TextBuffer *out) {
    MathPart part[MATH_PARTS];
    text_append(out, "", 0);
    t = math_trim(t);
    if (depth > MATH_DEPTH) {
        text_append(out, t.s, t.n);
        return;
    }
    if (!depth) t = math_value(t);
    VerifyNumber v;
    char number[VERIFY_NUMBER_SIZE];
    verify_number_new(&v);
    const bool single = !memchr(t.s, '=', t.n) && verify_only_number(t, false, &v) && rational_print(v.value, number);
    verify_number_free(&v);
    if (single) {
        text_string(out, number);
        return;
    }
    int count = math_split(t, 'u', part);
    if (count > 1) {
        math_join(part, count, true, 0, 0, 'u', depth, out);
        return;
    }
    count = math_split(t, ',', part);
    if (count > 1) {
        math_join(part, count, true, 0, 0, ',', depth, out);
        return;
    }
    if (t.n > 1 && math_bracket(t.s[0]) > 0 && math_close(t, 0) == t.n - 1) {
        const VerifySpan inside = {t.s + 1, t.n - 2};
        const bool set = t.s[0] == PLAIN_OPEN || t.s[0] == '{';
        count = math_split(inside, ',', part);
        if (count > 1) math_join(part, count, set, set ? 0 : t.s[0], set ? 0 : t.s[t.n - 1], ',', depth, out);
        else math_canonical(inside, depth + 1, out);
        return;
    }
    count = math_split(t, '+', part);
    if (count > 1 && !memchr(t.s, '=', t.n) && !memchr(t.s, '<', t.n) && !memchr(t.s, '>', t.n)) {
        math_join(part, count, true, 0, 0, '+', depth, out);
        return;
    }
    const char *equals = (const char *)memchr(t.s, '=', t.n);
    if (equals && depth < 2) {
        const size_t left = (size_t)(equals - t.s);
        MathPart side[2] = {{{t.s, left}, '+', NULL}, {{equals + 1, t.n - left - 1}, '+', NULL}};
        math_join(side, 2, true, '=', 0, ',', depth + 2, out);
        return;
    }
    math_product(t, depth, out);
}

/* Writes the canonical text of an answer. */
static inline void verify_math_canonical(VerifySpan answer, TextBuffer *out) {
    TextBuffer plain = {0};
    verify_plain(answer, &plain);
    if (plain.length > MATH_BYTES || memchr(plain.text, 0x7F, plain.length)) text_append(out, answer.s, answer.n);
    else math_canonical((VerifySpan){plain.text, plain.length}, 0, out);
    text_free(&plain);
}

/* The part of a completion that is compared, see the head of this file. */
static inline VerifySpan verify_math_final(VerifySpan completion) {
    VerifyMark mark;
    VerifySpan t = verify_final(completion, &mark), after = t;
    if (mark != VERIFY_UNMARKED) return t;
    if (verify_after_answer(&after)) {
        verify_before(&after, "\n");
        after = verify_trim(after);
        if (after.n && after.s[0] == ':') after = verify_trim((VerifySpan){after.s + 1, after.n - 1});
        if (after.n) return after;
    }
    const char *end = t.n ? (const char *)memrchr(t.s, '$', t.n) : NULL;
    const char *begin = end ? (const char *)memrchr(t.s, '$', (size_t)(end - t.s)) : NULL;
    return begin && begin + 1 < end ? (VerifySpan){begin + 1, (size_t)(end - begin) - 1} : t;
}

/* Right if the completion's final answer has the canonical text of the record's. */
static inline float verify_math(const RewardInput *in) {
    TextBuffer wanted = {0}, given = {0};
    if (!rational_available(NULL)) return NAN;
    VerifyMark mark;
    const VerifySpan answer = verify_final(verify_span(in->answer), &mark);
    if (!answer.n) return NAN;
    verify_math_canonical(answer, &wanted);
    verify_math_canonical(verify_math_final(verify_completion(in)), &given);
    const bool same = wanted.length && wanted.length == given.length && !memcmp(wanted.text, given.text, wanted.length);
    text_free(&wanted), text_free(&given);
    return same ? 1 : 0;
}

#endif
