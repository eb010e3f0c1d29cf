/* verify_list.h - lists of numbers: the check of sorting.
 *
 *   list        = { { separator } number } { separator }        on the last line of the final answer
 *   separator   = white space | `,` | `;` | `[` | `]` | `(` | `)` | `{` | `}`
 *
 * with at least one number and nothing else. Numbers are those of verify_number.h, compared by value in their order, so
 * `[3, 5.0, 9]` = `3 5 9`. A comma always separates (`1,234` is two numbers), and a slash does not make a fraction.
 *
 * Limits: those of a number. A completion's list, in canonical form, must fit in twice the answer's length and 2,016
 * bytes; a longer one is wrong.
 *
 *     char list[64];
 *     if (verify_final_list(verify_span("[3, 5.0, 9]"), list, sizeof list)) puts(list);        // 3 5 9
 */
#ifndef LLMC_REWARD_VERIFY_LIST_H
#define LLMC_REWARD_VERIFY_LIST_H

#include "../base/error.h"   /* xmalloc */
#include "../base/text.h"    /* TextBuffer, text_free */
#include "verify_answer.h"   /* VerifySpan, verify_digit, RewardInput, VerifyMark, ... */
#include "verify_number.h"   /* verify_at, VerifyNumber, verify_decimal, verify_number_free, ... */
#include "verify_plain.h"    /* PLAIN_CLOSE, PLAIN_OPEN, PLAIN_TEXT, PLAIN_TEXT_END, ... */
#include "verify_rational.h" /* VERIFY_NUMBER_SIZE, rational_available, rational_negate, rational_print */

static inline bool verify_separator(char c) {
    const bool mark = c == PLAIN_TEXT || c == PLAIN_TEXT_END || c == PLAIN_OPEN || c == PLAIN_CLOSE;
    return mark || verify_space(c) || (c && strchr(",;[](){}", c));
}

/* Writes the numbers of the plain text t, which must be a list and nothing else, to out[size]. */
static inline bool verify_list(VerifySpan t, VerifyNumber *v, char *out, size_t size) {
    char number[VERIFY_NUMBER_SIZE];
    size_t used = 0;
    for (size_t at = 0;;) {
        while (at < t.n && verify_separator(t.s[at])) at++;
        if (at == t.n) return used > 0;
        const bool negative = t.s[at] == '-';
        at += negative || t.s[at] == '+';
        if (!verify_digit(verify_at(t, at)) && !(verify_at(t, at) == '.' && verify_digit(verify_at(t, at + 1))))
            return false;
        at = verify_decimal(t, at, true, v);
        if (negative) rational_negate(v->value);
        if (!v->known || (at < t.n && !verify_separator(t.s[at])) || !rational_print(v->value, number)) return false;
        const int n = snprintf(out + used, size - used, "%s%s", used ? " " : "", number);
        if ((size_t)n >= size - used) return false;
        used += (size_t)n;
    }
}

/* Reads the last line as a list of numbers and nothing else; writes them to out[size], canonical and separated by one
 * space. */
static inline bool verify_final_list(VerifySpan text, char *out, size_t size) {
    VerifyMark mark;
    TextBuffer plain = {0};
    VerifyNumber v;
    if (!rational_available(NULL)) return false;
    verify_plain(verify_last_line(verify_final(text, &mark)), &plain);
    verify_number_new(&v);
    const bool list = verify_list((VerifySpan){plain.text, plain.length}, &v, out, size);
    verify_number_free(&v);
    text_free(&plain);
    return list;
}

/* Right if the completion's list has the values of the answer's, in its order. */
static inline float verify_sort(const RewardInput *in) {
    const size_t size = 2 * strlen(in->answer ? in->answer : "") + VERIFY_NUMBER_SIZE;
    char *wanted = (char *)xmalloc(2 * size), *given = wanted + size;
    float score = NAN;
    if (verify_final_list(verify_span(in->answer), wanted, size))
        score = verify_final_list(verify_completion(in), given, size) && !strcmp(wanted, given) ? 1 : 0;
    free(wanted);
    return score;
}

#endif
