/* gold.h - hidden rules that say how good an answer is: the known truth behind synthetic preferences.
 *
 * A rule is a weighted sum of parts, `name[=argument][:weight]` divided by commas; a weight is 1 unless given.
 *
 *     char                   how often the answer holds the character that the prompt begins with
 *     char=x                 how often it holds x
 *     length                 its length in bytes; length:-1 prefers short answers
 *     repeats                how often a character stands after its like; repeats:-1 prefers variety
 *     sum                    1 where the last number of the answer is the sum that the prompt asks for, as 12+34=; else 0
 *
 * data/make_prefs makes pairs whose better answer is the one of the higher score, and scores completions by the same rule
 * as a reward program (--score), so that what a reward model learnt, and what a policy made of it, can be held against
 * the truth.
 *
 *     Gold g;
 *     if (!gold_parse(&g, "char:1,length:-0.5", &e)) die("%s", e.text);
 *     gold_score(&g, "cab:", "cacc");                      // 3 - 2 = 1
 */
#ifndef LLMC_REWARD_GOLD_H
#define LLMC_REWARD_GOLD_H

#include "../base/error.h"
#include <math.h>

enum { GOLD_PARTS = 8 };

typedef enum { GOLD_CHAR, GOLD_LENGTH, GOLD_REPEATS, GOLD_SUM } GoldKind;

typedef struct Gold {
    int count;
    struct {
        GoldKind kind;
        char character; /* GOLD_CHAR: 0 is the prompt's first */
        double weight;
    } part[GOLD_PARTS];
} Gold;

/* Does `name`, n bytes at text, stand there whole? */
static inline bool gold_named(const char *text, size_t n, const char *name) {
    return strlen(name) == n && !memcmp(text, name, n);
}

/* One part from the front of text; returns what follows it, or NULL. */
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
        if (ok) character = at[1], at += 2;
    }
    if (ok && *at == ':') {
        weight = strtod(at + 1, &end);
        ok = end > at + 1 && isfinite(weight);
        at = end;
    }
    if (!ok || (*at && (*at != ',' || !at[1]))) {
        error_set(e, "rule '%.100s': it is not one of char, char=x, length, repeats, sum with a weight, as char:2",
                  text);
        return NULL;
    }
    g->part[g->count].kind = kind, g->part[g->count].character = character, g->part[g->count++].weight = weight;
    return *at ? at + 1 : at;
}

/* Errors: a part of no known name, with an argument that it does not take, or more than GOLD_PARTS. */
static inline bool gold_parse(Gold *g, const char *spec, Error *e) {
    *g = (Gold){0};
    do spec = gold_parse_part(g, spec, e);
    while (spec && *spec);
    return spec != NULL;
}

/* Reads the digits at *s into value and moves past them; false: there are none, or too many. */
static inline bool gold_number(const char **s, long long *value) {
    const char *start = *s;
    for (*value = 0; **s >= '0' && **s <= '9' && *s - start < 18; ++*s) *value = 10 * *value + (**s - '0');
    return *s > start && !(**s >= '0' && **s <= '9');
}

/* The sum that "a+b+c=" asks for; false: it asks for none. */
static inline bool gold_sum(const char *prompt, long long *sum) {
    long long value;
    for (*sum = 0;; prompt++) {
        if (!gold_number(&prompt, &value)) return false;
        *sum += value;
        if (*prompt != '+') return *prompt == '=';
    }
}

/* Is the last number of the answer the sum? */
static inline bool gold_right(const char *prompt, const char *answer) {
    long long sum, last = -1;
    if (!gold_sum(prompt, &sum)) return false;
    while (*answer) {
        if (*answer < '0' || *answer > '9') answer++;
        else if (!gold_number(&answer, &last)) return false;
    }
    return last == sum;
}

/* The answer's score under the rule. */
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
