/* verify_text.h - answers of questions in words: exact match and F1 of SQuAD, and the letter of a choice.
 *
 *   em       1 if the texts are equal after lower-casing, removing punctuation and the words a, an, the, and joining
 *            white space (Rajpurkar et al. 2016, SQuAD, evaluate-v1.1.py: exact_match_score)
 *   f1       harmonic mean of precision and recall of the words of these texts (the same, f1_score); 1 if neither has a
 *            word (evaluate-v2.0.py)
 *   choice   the letter: `B`, `(B)`, `B.`, `B) text`, or the last one after `answer is` or `answer:`
 *
 * For em and f1 the best value over the record's answer and the texts in its field `answers` counts. Punctuation and
 * letters are ASCII's.
 *
 *     const RewardInput in = {.answer = "Denver Broncos", .completion = "the Denver Broncos!"};
 *     const float match = verify_em(&in, NULL), overlap = verify_f1(&in, NULL);        // 1, 1
 */
#ifndef LLMC_REWARD_VERIFY_TEXT_H
#define LLMC_REWARD_VERIFY_TEXT_H

#include "../base/error.h" /* xcalloc */
#include "../base/text.h"  /* TextBuffer, text_append, text_free, text_clear */
#include "verify_answer.h" /* VerifySpan, verify_span, RewardInput, verify_same, ... */
#include <ctype.h>
#include <math.h>

/* Appends the words of t, normalised and separated by one space. Returns their number. */
static inline int verify_words(VerifySpan t, TextBuffer *out) {
    TextBuffer word = {0};
    int count = 0;
    text_append(out, "", 0);
    for (size_t i = 0; i <= t.n; i++) {
        const char c = i < t.n ? t.s[i] : ' ';
        if (!verify_space(c)) {
            const char lower = (char)(c >= 'A' && c <= 'Z' ? c | 32 : c);
            if (!ispunct((unsigned char)c) || c & 0x80) text_append(&word, &lower, 1);
            continue;
        }
        const VerifySpan w = {word.text, word.length};
        const bool article =
            verify_same(w, verify_span("a")) || verify_same(w, verify_span("an")) || verify_same(w, verify_span("the"));
        if (w.n && !article) {
            if (count++) text_append(out, " ", 1);
            text_append(out, word.text, word.length);
        }
        text_clear(&word);
    }
    text_free(&word);
    return count;
}

static inline int verify_compare_words(const void *a, const void *b) {
    const VerifySpan *x = (const VerifySpan *)a, *y = (const VerifySpan *)b;
    const int order = memcmp(x->s, y->s, x->n < y->n ? x->n : y->n);
    return order ? order : (x->n > y->n) - (x->n < y->n);
}

/* The `count` words of a normalised text, sorted; the caller frees them. */
static inline VerifySpan *verify_sorted_words(const TextBuffer *text, int count) {
    VerifySpan *words = (VerifySpan *)xcalloc((size_t)count + 1, sizeof *words);
    const char *at = text->text;
    for (int i = 0; i < count; i++) {
        const char *end = (const char *)memchr(at, ' ', (size_t)(text->text + text->length - at));
        words[i] = (VerifySpan){at, (size_t)((end ? end : text->text + text->length) - at)};
        at = end ? end + 1 : at;
    }
    qsort(words, (size_t)count, sizeof *words, verify_compare_words);
    return words;
}

/* The score of one answer. */
static inline float verify_overlap(VerifySpan completion, VerifySpan answer, bool f1) {
    TextBuffer a = {0}, b = {0};
    const int n = verify_words(completion, &a), m = verify_words(answer, &b);
    float score = a.length == b.length && !memcmp(a.text, b.text, a.length) ? 1 : 0;
    if (f1 && n && m) {
        VerifySpan *x = verify_sorted_words(&a, n), *y = verify_sorted_words(&b, m);
        int same = 0;
        for (int i = 0, k = 0; i < n && k < m;) {
            const int order = verify_compare_words(&x[i], &y[k]);
            same += !order;
            i += order <= 0;
            k += order >= 0;
        }
        score = same ? (float)(2.0 * same / (n + m)) : 0;
        free(x), free(y);
    }
    text_free(&a), text_free(&b);
    return score;
}

/* The best score over the record's answers; NaN if it has none. */
static inline float verify_best_overlap(const RewardInput *in, const json_t *fields, bool f1) {
    VerifyMark mark;
    const VerifySpan given = verify_final(verify_completion(in), &mark), answer = verify_trim(verify_span(in->answer));
    const json_t *answers = json_object_get(fields, "answers");
    float best = NAN;
    if (answer.n) best = verify_overlap(given, answer, f1);
    for (size_t i = 0; i < json_array_size(answers); i++) {
        const VerifySpan text = verify_field(json_array_get(answers, i));
        if (text.s) best = fmaxf(best, verify_overlap(given, text, f1)); /* fmaxf ignores a NaN */
    }
    return best;
}

static inline float verify_em(const RewardInput *in, const json_t *fields) {
    return verify_best_overlap(in, fields, false);
}

static inline float verify_f1(const RewardInput *in, const json_t *fields) {
    return verify_best_overlap(in, fields, true);
}

/* The letter that t begins with (A to Z; also in parentheses, bold, or \text{}), if no other letter or digit follows it,
 * or 0. */
static inline char verify_choice_letter(VerifySpan t) {
    static const char *const borders[] = {"\\text{", "\\mathrm{", "\\textbf{", "\\boxed{", "(", "*",
                                          "[",       "{",         "$",         " ",        ":", "\n"};
    for (size_t i = 0; i < sizeof borders / sizeof *borders; i++)
        if (verify_starts(t, 0, borders[i])) {
            t = (VerifySpan){t.s + strlen(borders[i]), t.n - strlen(borders[i])};
            i = (size_t)-1;
        }
    const bool upper = t.n && t.s[0] >= 'A' && t.s[0] <= 'Z';
    const bool alone =
        t.n == 1 || (t.n > 1 && !verify_letter(t.s[1]) && !verify_digit(t.s[1]) && t.s[1] != '\'' && !(t.s[1] & 0x80));
    const bool word = t.n > 2 && t.s[1] == ' ' && (verify_letter(t.s[2]) || verify_digit(t.s[2])); /* A cat */
    return upper && alone && !word ? t.s[0] : 0;
}

/* The letter of a completion: after the last `answer is` or `answer:`, or the beginning of the final answer. */
static inline char verify_choice_of(VerifySpan completion) {
    VerifyMark mark;
    VerifySpan t = verify_final(completion, &mark);
    if (mark == VERIFY_UNMARKED && !verify_after_answer(&t)) verify_after_last(&t, "NSWER:");
    return verify_choice_letter(t);
}

/* Right if the completion states the answer's letter; NaN if the answer is none. */
static inline float verify_choice(const RewardInput *in) {
    const char wanted = verify_choice_letter(verify_trim(verify_span(in->answer)));
    if (!wanted) return NAN;
    return verify_choice_of(verify_completion(in)) == wanted ? 1 : 0;
}

#endif
