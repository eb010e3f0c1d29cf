/* verify_answer.h - the final answer in a completion, and the record that it is compared with.
 *
 * Text up to the last `</think>` is ignored. In the rest, the final answer is the first of these that exists:
 *
 *   the content of the last `<answer>...</answer>`       DeepSeek-R1 (2025); the closing tag may be missing
 *   the text after the last `####`, on its line          GSM8K (Cobbe et al. 2021)
 *   the content of the last `\boxed{...}`                MATH (Hendrycks et al. 2021); its braces must balance
 *   the whole text
 *
 * without white space around it. The last one always counts, so listing many guesses earns nothing. Checks of an
 * expression, a list or brackets read the last line of it that is not empty, after its last colon and without a final
 * full stop.
 *
 * Limits: none. Every function takes linear time and allocates nothing, except verify_fields(). White space, digits and
 * letters are ASCII's; other bytes are compared as they are.
 *
 *     VerifyMark mark;
 *     const VerifySpan found = verify_final("2+3=5, so \\boxed{5}.", &mark);        // `5`, VERIFY_BOXED
 *     const VerifySpan line = verify_last_line(verify_span("Sorted: 1 2 3."));      // `1 2 3`
 */
#ifndef LLMC_REWARD_VERIFY_ANSWER_H
#define LLMC_REWARD_VERIFY_ANSWER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* A completion and the record that it is scored against. Any text may be NULL (= empty). */
typedef struct RewardInput {
    const char *prompt, *completion;
    const char *task, *answer, *fields; /* of the record; fields is a JSON object as text */
    int32_t tokens, max_tokens;         /* length of the completion; sampling limit (0: unknown) */
    bool finished;                      /* ended by its stop token, not by the limit */
    uint64_t id;                        /* id of the sample; key of the random reward */
    const int32_t *ids;                 /* (tokens) the completion's token ids, or NULL */
} RewardInput;

typedef struct VerifySpan {
    const char *s;
    size_t n;
} VerifySpan;

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

#endif
