/* task.h - shared parts of the generators of verifiable problems: the problem, its difficulty, the held-out split.
 *
 * A problem has a prompt, an answer that a verifier (verify.h) can check, fields for that verifier, a demonstration,
 * and a key: a canonical form that equivalent problems share (12+34 and 34+12, a list in any order, a story with other
 * names). Only the key decides whether a problem is held out: one key in ten has a hash divisible by 10, for any seed,
 * level or file. A training file and a held-out file therefore never share a problem.
 */
#ifndef LLMC_REWARD_TASK_H
#define LLMC_REWARD_TASK_H

#define XXH_INLINE_ALL

#include "../base/random.h" /* Random, random_below, random_between */
#include "../base/text.h"   /* text_clear, text_free, TextBuffer, text_append, ... */
#include <jansson.h>
#include <xxhash.h>

#define TASK_NAMES  "add|sub|mul|arithmetic|countdown|sort|brackets|word|bigmul|lookup|guess"
#define TASK_STYLES "auto|direct|reversed|scratchpad"

typedef enum {
    TASK_ADD,
    TASK_SUB,
    TASK_MUL,
    TASK_ARITHMETIC,
    TASK_COUNTDOWN,
    TASK_SORT,
    TASK_BRACKETS,
    TASK_WORD,
    TASK_BIGMUL, /* from here on: problems for models that call tools */
    TASK_LOOKUP,
    TASK_GUESS,
    TASK_KINDS
} TaskKind;

typedef enum { TASK_AUTO, TASK_DIRECT, TASK_REVERSED, TASK_SCRATCHPAD } TaskStyle;

enum { TASK_VALUES = 64 };

/* Difficulty; a setting of 0 takes the value of the level. */
typedef struct TaskOptions {
    int level;              /* 1 to 5 */
    int digits, min_digits; /* arithmetic: maximum and minimum digits of an operand */
    int items;              /* number of operands, given numbers, list items, brackets shown, steps of a story */
    int64_t largest;        /* countdown, sort, word: the largest number; lookup: the number of facts */
    TaskStyle style;        /* style of the demonstration */
} TaskOptions;

typedef struct Task {
    TaskKind kind;
    TextBuffer prompt, answer, key, completion;
    json_t *fields;
    json_t *steps;              /* of the demonstration, before its completion (task_tools.h) */
    int count;                  /* number of values */
    int64_t value[TASK_VALUES]; /* operands, given numbers, items, or a story's numbers */
    char op[TASK_VALUES];       /* arithmetic, word: operator before value[i] */
    int64_t result;             /* the answer, if it is a number */
} Task;

static inline void task_clear(Task *t) {
    text_clear(&t->prompt);
    text_clear(&t->answer);
    text_clear(&t->key);
    text_clear(&t->completion);
    json_decref(t->fields);
    json_decref(t->steps);
    t->fields = json_object();
    t->steps = json_array();
    t->count = 0;
}

static inline void task_free(Task *t) {
    text_free(&t->prompt), text_free(&t->answer), text_free(&t->key), text_free(&t->completion);
    json_decref(t->fields), json_decref(t->steps);
    *t = (Task){0};
}

/* Whether the problem is held out, which depends only on its key. */
static inline bool task_held_out(const Task *t) { return XXH3_64bits(t->key.text, t->key.length) % 10 == 0; }

/* The setting, or the level's value if it is 0. */
static inline int64_t task_knob(int64_t knob, int level, const int64_t by_level[5]) {
    return knob ? knob : by_level[level - 1];
}

static inline int task_compare(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Writes values separated by one space. */
static inline void task_list(TextBuffer *b, const int64_t *value, int count) {
    for (int i = 0; i < count; i++) text_format(b, i ? " %lld" : "%lld", (long long)value[i]);
}

/* Writes a number; if reversed, its digits are least significant first, after the sign. */
static inline void task_number(TextBuffer *b, int64_t value, bool reversed) {
    char digits[24];
    const int n = snprintf(digits, sizeof digits, "%lld", value < 0 ? -(long long)value : (long long)value);
    if (value < 0) text_string(b, "-");
    for (int i = 0; i < n; i++) text_append(b, &digits[reversed ? n - 1 - i : i], 1);
}

/* `value` with one digit replaced: a wrong number of the same length. */
static inline int64_t task_wrong_number(int64_t value, Random *r) {
    char digits[24];
    const int n = snprintf(digits, sizeof digits, "%lld", value < 0 ? -(long long)value : (long long)value);
    const int at = (int)random_below(r, (uint64_t)n), lowest = at == 0 && (n > 1 || value < 0) ? 1 : 0;
    char digit = digits[at];
    while (digit == digits[at]) digit = (char)('0' + random_between(r, lowest, 9));
    digits[at] = digit;
    const int64_t wrong = strtoll(digits, NULL, 10);
    return value < 0 ? -wrong : wrong;
}

#endif
