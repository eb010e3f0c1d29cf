/* verify_list.h - lists of numbers: the check of sorting.
 *
 *   list        = { { separator } number } { separator }        on the last line of the final answer
 *   separator   = white space | `,` | `;` | `[` | `]` | `(` | `)` | `{` | `}`
 *
 * with at least one number and nothing else. Numbers are those of verify_number.h, compared by value in their order, so
 * `[3, 5.0, 9]` = `3 5 9`. A comma always separates (`1,234` is two numbers), and a slash does not make a fraction.
 *
 * Limits: those of a number. A completion's list, in canonical form, must fit in twice the answer's length and 1,040
 * bytes; a longer one is wrong.
 *
 *     char list[64];
 *     if (verify_final_list("Sorted: [3, 5.0, 9].", list, sizeof list)) puts(list);        // 3 5 9
 */
#ifndef LLMC_REWARD_VERIFY_LIST_H
#define LLMC_REWARD_VERIFY_LIST_H

#include "../base/error.h" /* xmalloc */
#include "verify_answer.h" /* verify_space, RewardInput, VerifyMark, VerifySpan, ... */
#include "verify_number.h" /* VERIFY_NUMBER_SIZE, VerifyNumber, verify_canonical, verify_number */

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

/* Right if the completion's list has the values of the answer's, in its order. */
static inline float verify_sort(const RewardInput *in) {
    const size_t size = 2 * strlen(in->answer ? in->answer : "") + VERIFY_NUMBER_SIZE;
    char *wanted = (char *)xmalloc(2 * size), *given = wanted + size;
    float score = NAN;
    if (verify_final_list(in->answer, wanted, size))
        score = verify_final_list(in->completion, given, size) && !strcmp(wanted, given) ? 1 : 0;
    free(wanted);
    return score;
}

#endif
