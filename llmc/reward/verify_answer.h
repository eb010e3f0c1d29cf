/* verify_answer.h - the final answer in a completion, and the record that it is compared with.
 *
 * Text up to the last `</think>` is ignored. In the rest, the final answer is the first of these that exists:
 *
 *   the content of the last `<answer>...</answer>`       DeepSeek-R1 (2025); the closing tag may be missing
 *   the text after the last `####`, on its line          GSM8K (Cobbe et al. 2021)
 *   the content of the last `\boxed{...}`                MATH (Hendrycks et al. 2021); its braces must balance
 *   the whole text
 *
 * where of `####` and `\boxed{...}` the later one counts, and a heading of Markdown (`#### Step 1`) does not. The answer
 * is taken without white space around it. The last one always counts, so listing many guesses earns nothing. Checks of
 * an expression, a list or brackets read the last line of it that is not empty, after its last colon and without a final
 * full stop.
 *
 * Limits: none. Every function takes linear time and allocates nothing, except verify_fields(). White space, digits and
 * letters are ASCII's; other bytes are compared as they are.
 *
 *     VerifyMark mark;
 *     const VerifySpan found = verify_final(verify_span("so \\boxed{5}."), &mark);        // `5`, VERIFY_BOXED
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
    size_t completion_length;           /* bytes, which may hold NULs; 0: the completion ends at its first NUL */
    const char *task, *answer, *fields; /* of the record; fields is a JSON object as text */
    int32_t tokens, max_tokens;         /* length of the completion; sampling limit (0: unknown) */
    bool finished;                      /* ended by its stop token, not by the limit */
    uint64_t id;                        /* id of the sample; key of the random reward */
    const int32_t *ids;                 /* (tokens) the completion's token ids, or NULL */
    const int32_t *prompt_ids;          /* (prompt_tokens) those of the prompt, for reward models, or NULL */
    int32_t prompt_tokens;
    int32_t group;          /* number of its group in a batch; completions of a group are adjacent */
    int32_t turns, calls;   /* of the model, and of tools; 0 turns: one */
    const char *stop;       /* why a completion of several turns ended; NULL: it has one turn */
    const json_t *messages; /* its turns and their answers, after the prompt's messages; or NULL */
    int32_t unread;         /* answers at the end of the messages that the model has not observed */
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

/* The whole completion, with what follows a NUL. */
static inline VerifySpan verify_completion(const RewardInput *in) {
    VerifySpan span = verify_span(in->completion);
    if (in->completion && in->completion_length) span.n = in->completion_length;
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

/* Reduces `t` to the text after the last `answer is` or `answer:`; false, with t unchanged, if there is neither. */
static inline bool verify_after_answer(VerifySpan *t) {
    const bool is = verify_after_last(t, "nswer is");
    return verify_after_last(t, "nswer:") || is;
}

/* Reduces `t` to the text before the first `word`, if it occurs. */
static inline void verify_before(VerifySpan *t, const char *word) {
    const char *p = (const char *)memmem(t->s, t->n, word, strlen(word));
    if (p) t->n = (size_t)(p - t->s);
}

typedef enum { VERIFY_UNMARKED, VERIFY_TAGGED, VERIFY_HASHED, VERIFY_BOXED } VerifyMark;

/* Whether a line after `####` is a heading of Markdown and not an answer: it begins with a word, or with the number of
 * a section and a word, and text follows it. */
static inline bool verify_is_heading(VerifySpan line, VerifySpan after) {
    size_t i = 0;
    line = verify_trim(line);
    if (!verify_trim(after).n) return false;
    while (i < line.n && verify_digit(line.s[i])) i++;
    if (i && i < line.n && (line.s[i] == '.' || line.s[i] == ')' || line.s[i] == ':')) i++;
    else i = 0;
    while (i < line.n && (verify_space(line.s[i]) || line.s[i] == '*' || line.s[i] == '_')) i++;
    return i == line.n || verify_letter(line.s[i]) || line.s[i] & 0x80;
}

/* Reduces `t` to `####` and the rest of its line, for the last `####` that does not begin a heading; false if there is
 * none. */
static inline bool verify_hashed(VerifySpan *t) {
    const VerifySpan all = verify_trim(*t);
    size_t end = all.n;
    for (size_t i = all.n; i >= 4; i--) {
        if (memcmp(all.s + i - 4, "####", 4)) continue;
        VerifySpan line = {all.s + i, end - i};
        verify_before(&line, "\n");
        const VerifySpan after = {line.s + line.n, (size_t)(all.s + all.n - line.s) - line.n};
        if (!verify_is_heading(line, after)) {
            *t = (VerifySpan){all.s + i - 4, line.n + 4};
            return true;
        }
        end = i - 4;
        i -= 3;
    }
    return false;
}

/* Reduces `t` to the content of the last \boxed{} whose braces balance; false if its braces do not. */
static inline bool verify_boxed(VerifySpan *t) {
    VerifySpan box = *t;
    int open = 1;
    if (!verify_after_last(&box, "\\boxed{")) return false;
    for (size_t i = 0; i < box.n; i++) {
        const bool escaped = i && box.s[i - 1] == '\\' && !(i > 1 && box.s[i - 2] == '\\');
        if (!escaped) open += (box.s[i] == '{') - (box.s[i] == '}');
        if (open) continue;
        *t = (VerifySpan){box.s, i};
        return true;
    }
    return false;
}

/* The part of the completion that states the final answer, trimmed (see the head of this file). */
static inline VerifySpan verify_final(VerifySpan all, VerifyMark *mark) {
    verify_after_last(&all, "</think>");
    VerifySpan t = all, hashed = all, boxed = all;
    if (verify_after_last(&t, "<answer>")) {
        verify_before(&t, "</answer>");
        *mark = VERIFY_TAGGED;
        if (verify_boxed(&t)) *mark = VERIFY_BOXED;
        return verify_trim(t);
    }
    const bool box = verify_boxed(&boxed);
    if (verify_hashed(&hashed) && (!box || hashed.s + hashed.n > boxed.s)) {
        *mark = VERIFY_HASHED;
        return verify_trim((VerifySpan){hashed.s + 4, hashed.n - 4});
    }
    *mark = box ? VERIFY_BOXED : VERIFY_UNMARKED;
    return verify_trim(box ? boxed : all);
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
    json_t *fields = json_loads(in->fields, JSON_ALLOW_NUL, NULL);
    if (fields && !json_is_object(fields)) {
        json_decref(fields);
        fields = NULL;
    }
    return fields;
}

/* The value of a field, or NULL if it is absent or null. */
static inline const json_t *verify_present(const json_t *fields, const char *name) {
    const json_t *value = json_object_get(fields, name);
    return json_is_null(value) ? NULL : value;
}

/* A text among the record's fields, with its NULs; its s is NULL if the value is absent or not a string. */
static inline VerifySpan verify_field(const json_t *value) {
    return (VerifySpan){json_string_value(value), json_string_length(value)};
}

#endif
