/* reply.h - what a server of chat completions replied to a judge's question, and the value that it stands for.
 *
 * A reply is a JSON object with choices[0].message.content and, if they were asked for, choices[0].logprobs.content: for each
 * token its text and those of the likeliest tokens at its place, with their log-probabilities.
 *
 *   log-probabilities   the first place, after the end text of a rationale if there is one, at which a label is among the
 *                       likeliest tokens: the probabilities of the labels there, blanks around them ignored
 *   a pattern           all its matches must agree. Its first group is a number in 1 ... N (score), or a label; a second group
 *                       is a denominator, and the value is the quotient
 *
 * With --rubric-at-once a reply has a line "k: L" for each criterion k, in any order: each criterion has the probabilities at
 * the place of its label, or the label itself. A criterion without a line, a line for another number, and two lines that differ
 * leave the whole reply without a value. So do two lines for a criterion whose probabilities are asked for, even if they agree.
 *
 * Whatever is not exactly one of these has no value: no match, matches that differ, a number out of range, a refusal.
 *
 *     JudgeReply r;
 *     const char *const labels[] = {"yes", "no"}, *body = "{}";
 *     double p[2], mass;
 *     if (!judge_reply_parse(&r, body, strlen(body), &e)) return false;       // another shape
 *     const bool found = judge_reply_labels(&r, labels, 2, NULL, p, &mass);
 *     judge_reply_free(&r);
 */
#ifndef LLMC_JUDGE_REPLY_H
#define LLMC_JUDGE_REPLY_H

#include "../base/error.h"            /* error_set, Error, xstrndup */
#include "../base/text.h"             /* TextBuffer, text_append, text_free */
#include "../reward/verify_answer.h"  /* VerifySpan */
#include "../reward/verify_pattern.h" /* VerifyRegex, verify_regex_compile, verify_regex_find, ... */
#include <jansson.h>
#include <math.h>
#include <strings.h>

enum { JUDGE_REPLY_MAX = 4 << 20 }; /* bytes of a reply */

/* The default of --judge-pattern: a key "score" of JSON, or a line that begins with "Score:". */
#define JUDGE_PATTERN "(?im)(?:\"score\"\\s*:\\s*\"?|^[\\s*_#>-]*score[\\s*_]*:[\\s*_]*)([^\\s\",}*_]+)"

/* The default with --rubric-at-once: a line, or a key of JSON, of a number, a colon and a label. */
#define JUDGE_LINES_PATTERN "(?im)^[\\s*_#>{\",-]*([0-9]{1,4})[\\s*_\"]*:[\\s*_\"]*([^\\s\",}*_]+)"

typedef struct JudgeReply {
    json_t *root;
    const char *content; /* NULL: a refusal */
    size_t length;
    const json_t *logprobs; /* list, or NULL */
} JudgeReply;

static inline void judge_reply_free(JudgeReply *r) {
    json_decref(r->root);
    *r = (JudgeReply){0};
}

/* Parses the body of a reply. Fails if it is no JSON, or of another shape. */
static inline bool judge_reply_parse(JudgeReply *r, const char *body, size_t n, Error *e) {
    json_error_t bad;
    *r = (JudgeReply){.root = json_loadb(body, n, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &bad)};
    if (!r->root) return error_set(e, "is not JSON (%s)", bad.text);
    const json_t *choice = json_array_get(json_object_get(r->root, "choices"), 0),
                 *message = json_object_get(choice, "message"), *content = json_object_get(message, "content");
    if (json_is_object(message) && (json_is_string(content) || json_is_null(content))) {
        r->content = json_string_value(content);
        r->length = json_string_length(content);
        const json_t *list = json_object_get(json_object_get(choice, "logprobs"), "content");
        r->logprobs = json_is_array(list) ? list : NULL;
        return true;
    }
    judge_reply_free(r);
    return error_set(e, "has no choices[0].message.content");
}

/* ---- labels ------------------------------------------------------------------------------------------------------ */

/* Whether a token is the label, but for blanks around it. */
static inline bool judge_token_is(const char *token, const char *label) {
    static const char blanks[] = " \n\t";
    token += strspn(token, blanks);
    label += strspn(label, " ");
    const size_t n = strlen(label);
    return !strncmp(token, label, n) && !token[n + strspn(token + n, blanks)];
}

/* Adds the probability of the token {token, logprob} to that of its label. Returns false if it has another shape. */
static inline bool judge_token_add(const json_t *item, const char *const *labels, int n, double *p) {
    const char *token = json_string_value(json_object_get(item, "token"));
    const json_t *logprob = json_object_get(item, "logprob");
    const double l = json_number_value(logprob);
    if (!token || !json_is_number(logprob) || !(l <= 1e-3)) return false;
    for (int i = 0; i < n; i++)
        if (judge_token_is(token, labels[i])) p[i] += exp(fmin(l, 0));
    return true;
}

/* The place of the first token after the last `end` in the text of the tokens; -1 if the text does not hold it. */
static inline int64_t judge_reply_after(const JudgeReply *r, const char *end) {
    TextBuffer text = {0};
    int64_t at = -1;
    size_t i;
    const json_t *item;
    if (!end) return 0;
    json_array_foreach(r->logprobs, i, item) {
        const char *token = json_string_value(json_object_get(item, "token"));
        const size_t before = text.length;
        if (token) text_append(&text, token, strlen(token));
        const size_t from = before > strlen(end) ? before - strlen(end) : 0;
        if (text.length && strstr(text.text + from, end)) at = (int64_t)i + 1;
    }
    text_free(&text);
    return at;
}

/* Sets p: (n) to the probabilities of the labels among the likeliest tokens of one place. Returns their sum; NaN if the
 * list has another shape. */
static inline double judge_place_labels(const json_t *place, const char *const *labels, int n, double *p) {
    const json_t *top = json_object_get(place, "top_logprobs"), *x;
    size_t k;
    double sum = 0;
    for (int i = 0; i < n; i++) p[i] = 0;
    if (!json_array_size(top)) return NAN;
    json_array_foreach(top, k, x) if (!judge_token_add(x, labels, n, p)) return NAN;
    for (int i = 0; i < n; i++) sum += p[i];
    if (sum > 1.01) return NAN; /* the same token twice */
    for (int i = 0; i < n && sum > 0; i++) p[i] /= sum;
    return sum;
}

/* Sets p: (n) to the probabilities of the labels, given that the answer is one of them, and *mass to their sum. end: text
 * that ends a rationale, or NULL. False if no label is found, or the list has another shape. */
static inline bool judge_reply_labels(const JudgeReply *r, const char *const *labels, int n, const char *end, double *p,
                                      double *mass) {
    const int64_t count = (int64_t)json_array_size(r->logprobs), first = judge_reply_after(r, end);
    for (int64_t at = first; first >= 0 && at < count; at++) {
        const double sum = judge_place_labels(json_array_get(r->logprobs, (size_t)at), labels, n, p);
        if (isnan(sum)) return false;
        if (sum == 0) continue;
        *mass = sum;
        return true;
    }
    return false;
}

/* What a reply's last line is: blanks, then a number of up to four digits, blanks, a colon and blanks, or other text. Zeros: an
 * empty line. */
typedef struct JudgeLine {
    enum { JUDGE_LINE_START, JUDGE_LINE_NUMBER, JUDGE_LINE_NUMBERED, JUDGE_LINE_COLON, JUDGE_LINE_OTHER } part;
    int digits;
    long number;
} JudgeLine;

/* Goes on with the text of a token. */
static inline void judge_line_add(JudgeLine *line, const char *token) {
    static const char before[] = " \t\v\f\r*_#>{\",-", blanks[] = " \t*_\"";
    for (; *token; token++) {
        const bool digit = *token >= '0' && *token <= '9';
        if (*token == '\n') *line = (JudgeLine){0};
        else if (digit && line->part <= JUDGE_LINE_NUMBER) {
            line->part = ++line->digits > 4 ? JUDGE_LINE_OTHER : JUDGE_LINE_NUMBER;
            line->number = 10 * line->number + (*token - '0');
        } else if (*token == ':' && (line->part == JUDGE_LINE_NUMBER || line->part == JUDGE_LINE_NUMBERED))
            line->part = JUDGE_LINE_COLON;
        else if (!strchr(line->part == JUDGE_LINE_START ? before : blanks, *token)) line->part = JUDGE_LINE_OTHER;
        else if (line->part == JUDGE_LINE_NUMBER) line->part = JUDGE_LINE_NUMBERED;
    }
}

/* The number before the colon with which a line ends; 0 if it does not end so. */
static inline long judge_line_number(const JudgeLine *line) {
    return line->part == JUDGE_LINE_COLON ? line->number : 0;
}

/* Sets p: (n) to the probability of the first of two labels in the line of each of n criteria, and *mass to the mean of their
 * sums. end: text that ends a rationale, or NULL. False if not every criterion has exactly one line. */
static inline bool judge_reply_label_lines(const JudgeReply *r, const char *const *labels, int n, const char *end,
                                           double *p, double *mass) {
    const int64_t count = (int64_t)json_array_size(r->logprobs), first = judge_reply_after(r, end);
    JudgeLine line = {0};
    bool ok = first >= 0;
    int found = 0;
    *mass = 0;
    for (int k = 0; k < n; k++) p[k] = NAN;
    for (int64_t at = first; ok && at < count; at++) {
        const json_t *place = json_array_get(r->logprobs, (size_t)at);
        const char *token = json_string_value(json_object_get(place, "token"));
        if (!token) continue;
        const long k =
            judge_token_is(token, labels[0]) || judge_token_is(token, labels[1]) ? judge_line_number(&line) : 0;
        judge_line_add(&line, token);
        if (!k) continue;
        double both[2];
        const double sum = judge_place_labels(place, labels, 2, both);
        ok = k >= 1 && k <= n && isnan(p[k - 1]) && sum > 0;
        if (!ok) break;
        p[k - 1] = both[0];
        *mass += sum / n;
        found++;
    }
    return ok && found == n;
}

/* ---- pattern ----------------------------------------------------------------------------------------------------- */

typedef struct JudgePattern {
    VerifyRegex regex;
    uint32_t groups;
} JudgePattern;

static inline void judge_pattern_free(JudgePattern *p) {
    verify_regex_free(&p->regex);
    *p = (JudgePattern){0};
}

/* Compiles --judge-pattern, which must have a group; with --rubric-at-once, two. */
static inline bool judge_pattern_open(JudgePattern *p, const char *pattern, bool at_once, Error *e) {
    Error why;
    *p = (JudgePattern){0};
    if (!verify_regex_compile(&p->regex, pattern, 0, &why)) return error_set(e, "--judge-%s", why.text);
    pcre2_pattern_info(p->regex.code, PCRE2_INFO_CAPTURECOUNT, &p->groups);
    if (p->groups >= (at_once ? 2 : 1)) return true;
    judge_pattern_free(p);
    return error_set(e, at_once ? "--judge-pattern: with --rubric-at-once it needs two groups ( ), for the number of a "
                                  "criterion and for its answer"
                                : "--judge-pattern: has no group ( ) for the answer");
}

/* Copies group k of the last match; "" if it did not take part. The caller frees it. */
static inline char *judge_pattern_group(const JudgePattern *p, const char *text, uint32_t k) {
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(p->regex.data);
    const bool any = k <= p->groups && at[2 * k] != PCRE2_UNSET && at[2 * k + 1] >= at[2 * k];
    return any ? xstrndup(text + at[2 * k], at[2 * k + 1] - at[2 * k]) : xstrndup("", 0);
}

/* Reads a decimal number that is the whole text; NaN if it is none. */
static inline double judge_number(const char *text) {
    char *end;
    size_t n = strspn(text, "0123456789.+-");
    if (!*text || text[n]) return NAN;
    const double value = strtod(text, &end);
    return *end || !isfinite(value) ? NAN : value;
}

/* The value of an answer: a number in 1 ... n of a score, as 0 to 1, or 1 for the first of two labels and 0 for the second; NaN
 * if it is neither. below: the denominator, or "". */
static inline double judge_answer_value(const char *answer, const char *below, const char *const *labels, int n,
                                        bool score) {
    const double number = judge_number(answer), under = judge_number(below);
    if (*below) return number >= 0 && under > 0 && number <= under ? number / under : NAN;
    if (score) return number >= 1 && number <= n ? (number - 1) / (n - 1) : NAN;
    for (int i = 0; i < 2; i++)
        if (!strcasecmp(answer, labels[i] + strspn(labels[i], " "))) return i ? 0 : 1;
    return NAN;
}

/* Finds the next match from *at on, and moves *at to where the one after it may begin. False after the last one, with *bad
 * set if the search hit its limit (../reward/verify_pattern.h). */
static inline bool judge_pattern_next(const JudgePattern *p, const JudgeReply *r, size_t *at, bool *bad) {
    *bad = false;
    if (*at > r->length) return false;
    const int rc = verify_regex_find(&p->regex, (VerifySpan){r->content, r->length}, *at);
    *bad = rc < 0 && rc != PCRE2_ERROR_NOMATCH;
    if (rc < 0) return false;
    const PCRE2_SIZE *found = pcre2_get_ovector_pointer(p->regex.data);
    *at = found[1] > found[0] ? found[1] : found[1] + 1;
    while (*at < r->length && (r->content[*at] & 0xC0) == 0x80) ++*at; /* to the next character */
    return true;
}

/* The value of a reply by the pattern; NaN if there is no match, if two matches have different values, or if the search hit
 * its limit (../reward/verify_pattern.h). */
static inline double judge_reply_match(const JudgeReply *r, const JudgePattern *p, const char *const *labels, int n,
                                       bool score) {
    double value = NAN;
    bool bad;
    if (!r->content) return NAN;
    for (size_t at = 0; judge_pattern_next(p, r, &at, &bad);) {
        char *answer = judge_pattern_group(p, r->content, 1), *below = judge_pattern_group(p, r->content, 2);
        const double here = judge_answer_value(answer, below, labels, n, score);
        free(answer), free(below);
        if (isnan(here) || (!isnan(value) && here != value)) return NAN;
        value = here;
    }
    return bad ? NAN : value;
}

/* Sets value: (n) to the verdicts of a reply on n criteria by the pattern, whose first group is the number of a criterion and
 * whose second one is a label: 1 for the first label, 0 for the second. False if a criterion has no match, if a match has
 * another number or no label, if two matches of a criterion differ, or if the search hit its limit. */
static inline bool judge_reply_match_lines(const JudgeReply *r, const JudgePattern *p, const char *const *labels, int n,
                                           double *value) {
    bool bad = false, ok = r->content != NULL;
    for (int k = 0; k < n; k++) value[k] = NAN;
    for (size_t at = 0; ok && judge_pattern_next(p, r, &at, &bad);) {
        char *number = judge_pattern_group(p, r->content, 1), *answer = judge_pattern_group(p, r->content, 2);
        const double which = judge_number(number), here = judge_answer_value(answer, "", labels, 2, false);
        free(number), free(answer);
        ok = which >= 1 && which <= n && which == floor(which) && !isnan(here);
        double *v = ok ? &value[(int)which - 1] : NULL;
        ok = ok && (isnan(*v) || *v == here);
        if (ok) *v = here;
    }
    for (int k = 0; k < n; k++) ok = ok && !isnan(value[k]);
    return ok && !bad;
}

#endif
