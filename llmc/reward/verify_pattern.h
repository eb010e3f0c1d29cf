/* verify_pattern.h - search for a regular expression in a completion.
 *
 * Patterns are PCRE2's (pcre2pattern(3)), in UTF-8 and without `\C`. They are searched for in the whole completion, not
 * in its final answer alone. Invalid UTF-8 in a completion matches nothing but is not an error. The pattern is the
 * record's field `pattern`, or else its answer; a record with neither, or with an invalid pattern, cannot be scored.
 *
 * Limits: about 10^7 backtracks (a tenth of a second) and 16 MB of memory for a completion. A search that exceeds them
 * has no result (NaN).
 *
 *     VerifyRegex regex;
 *     if (!verify_regex_compile(&regex, "^(yes|no)$", PCRE2_CASELESS, &e)) die("%s", e.text);
 *     const float found = verify_regex_match(&regex, verify_span("Yes"));        // 1
 *     verify_regex_free(&regex);
 */
#ifndef LLMC_REWARD_VERIFY_PATTERN_H
#define LLMC_REWARD_VERIFY_PATTERN_H

#include "../base/error.h" /* Error, checked_object, error_set, xstrdup */
#include "verify_answer.h" /* VerifySpan, RewardInput, verify_completion, verify_field, ... */
#include <math.h>
#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

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
    r->data = (pcre2_match_data *)checked_object(pcre2_match_data_create_from_pattern(r->code, NULL),
                                                 "the data of a pattern's match");
    r->context = (pcre2_match_context *)checked_object(pcre2_match_context_create(NULL), "a pattern's limits");
    pcre2_set_heap_limit(r->context, 16384); /* KiB */
    return true;
}

/* Compiles /pattern/flags with the flags i m s x; \/ is a slash. *end: the text after it. */
static inline bool verify_regex_parse(VerifyRegex *r, const char *text, const char **end, Error *e) {
    char *pattern = xstrdup(text), *to = pattern;
    const char *at = text + (*text == '/');
    uint32_t options = 0;
    for (; *at && *at != '/'; at++) {
        if (*at == '\\' && at[1] == '/') at++;
        else if (*at == '\\' && at[1]) *to++ = *at++;
        *to++ = *at;
    }
    *to = 0;
    bool good = (*text == '/' && *at == '/' && to != pattern) || error_set(e, "%.200s: must be /pattern/flags", text);
    if (good)
        for (at++; *at && strchr("imsx", *at); at++)
            options |= *at == 'i'   ? PCRE2_CASELESS
                       : *at == 'm' ? PCRE2_MULTILINE
                       : *at == 's' ? PCRE2_DOTALL
                                    : PCRE2_EXTENDED;
    *end = at;
    good = good && verify_regex_compile(r, pattern, options, e);
    free(pattern);
    return good;
}

/* Searches for the pattern from byte `from` on. Returns what pcre2_match() does; the groups are in r->data. PCRE2 restarts
 * the count of backtracks at every starting point, so the limit shrinks as the text grows: about 10^7 steps (a tenth of a
 * second) in total. */
static inline int verify_regex_find(const VerifyRegex *r, VerifySpan text, size_t from) {
    const size_t limit = 10000000 / (text.n + 1);
    pcre2_set_match_limit(r->context, limit < 1000 ? 1000 : limit > 1000000 ? 1000000 : (uint32_t)limit);
    return pcre2_match(r->code, (PCRE2_SPTR)text.s, text.n, from, 0, r->data, r->context);
}

/* 1 if the pattern is found, 0 if not, NaN if the search hit its limit. */
static inline float verify_regex_match(const VerifyRegex *r, VerifySpan text) {
    const int rc = verify_regex_find(r, text, 0);
    return rc >= 0 ? 1 : rc == PCRE2_ERROR_NOMATCH ? 0 : NAN;
}

/* The check: 1, 0, or NaN if the record has no valid pattern (one with a NUL is not), or the search hit its limit. */
static inline float verify_regex(const RewardInput *in, const json_t *fields) {
    VerifySpan pattern = verify_field(json_object_get(fields, "pattern"));
    VerifyRegex r;
    if (!pattern.s) pattern = verify_span(in->answer);
    if (!pattern.n || strlen(pattern.s) < pattern.n || !verify_regex_compile(&r, pattern.s, 0, NULL)) return NAN;
    const float score = verify_regex_match(&r, verify_completion(in));
    verify_regex_free(&r);
    return score;
}

#endif
