/* verify_brackets.h - closing brackets: the check of bracket matching.
 *
 * The final answer's last line, without white space, must be exactly the closers that balance the record's field
 * `open`, a text of brackets `( [ { <` and their closers, or, without that field, the record's answer. Opening a new
 * bracket is therefore wrong. A record whose `open` no text can balance cannot be scored (Dyck languages; Suzgun et al.
 * 2022, BIG-Bench Hard, dyck_languages).
 *
 * Limits: none; the closers and the completion are each copied once.
 *
 *     char closers[8];
 *     if (verify_close(verify_span("([{}"), closers)) puts(closers);        // ])
 */
#ifndef LLMC_REWARD_VERIFY_BRACKETS_H
#define LLMC_REWARD_VERIFY_BRACKETS_H

#include "../base/error.h" /* xmalloc */
#include "verify_answer.h" /* VerifySpan, verify_span, verify_completion, RewardInput, ... */
#include <math.h>

/* Writes the last line of the completion to out[size], without white space. */
static inline bool verify_final_closers(VerifySpan completion, char *out, size_t size) {
    VerifyMark mark;
    const VerifySpan t = verify_last_line(verify_final(completion, &mark));
    size_t n = 0;
    for (size_t i = 0; i < t.n; i++) {
        if (verify_space(t.s[i])) continue;
        if (!t.s[i]) return false;
        if (n + 1 >= size) return false;
        out[n++] = t.s[i];
    }
    out[n] = 0;
    return n > 0;
}

static inline char verify_closer(char open) {
    return open == '(' ? ')' : open == '[' ? ']' : open == '{' ? '}' : open == '<' ? '>' : 0;
}

/* Writes the closers that balance `open` (brackets only) to out[open.n + 1]; false if no balanced string starts with
 * `open`. `out` also holds the stack of expected closers. */
static inline bool verify_close(VerifySpan open, char *out) {
    size_t depth = 0;
    for (size_t i = 0; i < open.n; i++) {
        const char closer = verify_closer(open.s[i]);
        if (closer) out[depth++] = closer;
        else if (!depth || out[--depth] != open.s[i]) return false;
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
    const VerifySpan open = verify_field(json_object_get(fields, "open"));
    VerifySpan wanted = verify_trim(verify_span(in->answer));
    char *closers = NULL;
    if (open.s) {
        closers = (char *)xmalloc(open.n + 1);
        if (verify_close(open, closers)) wanted = verify_span(closers);
        else wanted.n = 0;
    }
    float score = NAN;
    if (wanted.n) {
        const size_t size = verify_completion(in).n + 1;
        char *given = (char *)xmalloc(size);
        score = verify_final_closers(verify_completion(in), given, size) && verify_same(verify_span(given), wanted);
        free(given);
    }
    free(closers);
    return score;
}

#endif
