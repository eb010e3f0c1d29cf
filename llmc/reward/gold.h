/* gold.h - gold rewards by rule: the known ground truth behind synthetic preferences.
 *
 * A rule is a weighted sum of parts, `name[=argument][:weight]`, separated by commas; the default weight is 1.
 *
 *     char                   how often the completion contains the first character of the prompt
 *     char=x                 how often the completion contains x
 *     length                 its length in bytes; length:-1 prefers short completions
 *     repeats                number of characters equal to the one before them; repeats:-1 prefers variety
 *     sum                    1 if its last number is the sum that the prompt asks for, as in 12+34=; else 0
 *
 * data/make_prefs generates pairs in which the better completion is the one with the higher score. As a reward program
 * (--score) it scores completions by the same rule, so that reward models and policies can be compared with the ground
 * truth.
 *
 *     Gold g;
 *     if (!gold_parse(&g, "char:1,length:-0.5", &e)) die("%s", e.text);
 *     gold_score(&g, "cab:", "cacc");                      // 3 - 2 = 1
 */
#ifndef LLMC_REWARD_GOLD_H
#define LLMC_REWARD_GOLD_H

#include "../base/error.h" /* Error, error_set */
#include <math.h>

enum { GOLD_PARTS = 8 };

typedef enum { GOLD_CHAR, GOLD_LENGTH, GOLD_REPEATS, GOLD_SUM } GoldKind;

typedef struct Gold {
    int count;
    struct {
        GoldKind kind;
        char character; /* GOLD_CHAR: 0 means the prompt's first character */
        double weight;
    } part[GOLD_PARTS];
} Gold;

/* Whether the n bytes at text are `name`. */
static inline bool gold_named(const char *text, size_t n, const char *name) {
    return strlen(name) == n && !memcmp(text, name, n);
}

/* Parses the first part of text. Returns the rest of text, or NULL on an error. */
static inline const char *gold_parse_part(Gold *g, const char *text, Error *e) {
    const size_t n = strcspn(text, "=:,");
    const char *at = text + n;
    GoldKind kind = GOLD_CHAR;
    char character = 0, *end;
    double weight = 1;
    bool ok = g->count < GOLD_PARTS;
    if (gold_named(text, n, "length")) kind = GOLD_LENGTH;
    else if (gold_named(text, n, "repeats")) kind = GOLD_REPEATS;
    else if (gold_named(text, n, "sum")) kind = GOLD_SUM;
    else ok = ok && gold_named(text, n, "char");
    if (ok && *at == '=') {
        ok = kind == GOLD_CHAR && at[1];
        if (ok) {
            character = at[1];
            at += 2;
        }
    }
    if (ok && *at == ':') {
        weight = strtod(at + 1, &end);
        ok = end > at + 1 && isfinite(weight);
        at = end;
    }
    if (!ok || (*at && (*at != ',' || !at[1]))) {
        error_set(e, "rule '%.100s': expected char, char=x, length, repeats or sum, with an optional weight, as char:2",
                  text);
        return NULL;
    }
    g->part[g->count].kind = kind;
    g->part[g->count].character = character;
    g->part[g->count++].weight = weight;
    return *at ? at + 1 : at;
}

/* Parses a rule. Fails on an unknown part, an argument that a part does not take, or more than GOLD_PARTS parts. */
static inline bool gold_parse(Gold *g, const char *spec, Error *e) {
    *g = (Gold){0};
    do spec = gold_parse_part(g, spec, e);
    while (spec && *spec);
    return spec != NULL;
}

/* Reads the digits at *s into value and moves past them; false if there are none or too many. */
static inline bool gold_number(const char **s, long long *value) {
    const char *start = *s;
    for (*value = 0; **s >= '0' && **s <= '9' && *s - start < 18; ++*s) *value = 10 * *value + (**s - '0');
    return *s > start && !(**s >= '0' && **s <= '9');
}

/* The sum that a prompt of the form "a+b+c=" asks for; false for any other prompt. */
static inline bool gold_sum(const char *prompt, long long *sum) {
    long long value;
    for (*sum = 0;; prompt++) {
        if (!gold_number(&prompt, &value)) return false;
        *sum += value;
        if (*prompt != '+') return *prompt == '=';
    }
}

/* Whether the last number of the completion `answer` is the sum. */
static inline bool gold_right(const char *prompt, const char *answer) {
    long long sum, last = -1;
    if (!gold_sum(prompt, &sum)) return false;
    while (*answer) {
        if (*answer < '0' || *answer > '9') answer++;
        else if (!gold_number(&answer, &last)) return false;
    }
    return last == sum;
}

/* The score of the completion `answer` under the rule. */
static inline double gold_score(const Gold *g, const char *prompt, const char *answer) {
    double score = 0;
    for (int i = 0; i < g->count; i++) {
        const char wanted = g->part[i].character ? g->part[i].character : *prompt;
        double value = 0;
        switch (g->part[i].kind) {
        case GOLD_CHAR:
            for (const char *c = answer; *c; c++) value += *c == wanted;
            break;
        case GOLD_LENGTH: value = (double)strlen(answer); break;
        case GOLD_REPEATS:
            for (const char *c = answer; *c; c++) value += c > answer && *c == c[-1];
            break;
        case GOLD_SUM: value = gold_right(prompt, answer); break;
        }
        score += g->part[i].weight * value;
    }
    return score;
}

#endif
