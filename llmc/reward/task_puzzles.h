/* task_puzzles.h - problems of countdown, sorting and bracket matching.
 *
 *   task        prompt            answer   direct      scratchpad                                (/ is a newline)
 *   countdown   3 4 5 -> 35:      35       (3+4)*5     3+4=7 / 7*5=35 / #### (3+4)*5
 *   sort        sort 5 3 9:       3 5 9    3 5 9       5 / 3 5 / 3 5 9 / #### 3 5 9              (insertion)
 *   brackets    close ([{}:       ])       ])          ( / ([ / ([{ / ([ / #### ])               (open brackets)
 *
 *   level       1            2            3            4            5
 *   countdown   3 to 9       3 to 20      4 to 25      4 to 50      5 to 99      (3 to 9: three numbers up to 9,
 *                                                                            target up to 90)
 *   sort        3 to 9       4 to 99      6 to 99      8 to 999     10 to 999    (3 to 9: three items up to 9)
 *   brackets    6 of 2       10 of 3      16 of 3      24 of 3      40 of 3      (up to 6 brackets of 2 kinds)
 *
 * A countdown problem is made by combining its numbers at random, so it has a solution in which every step gives a
 * positive whole number. The demonstration is a shortest such solution, found by search. The target is not one of the
 * numbers. Keys: the sorted numbers and the target; the sorted items; the brackets shown.
 */
#ifndef LLMC_REWARD_TASK_PUZZLES_H
#define LLMC_REWARD_TASK_PUZZLES_H

#include "../base/error.h"  /* Error, error_set */
#include "../base/random.h" /* random_below, Random, random_between */
#include "../base/text.h"   /* text_string, text_format, text_append, TextBuffer */
#include "task.h"           /* Task, task_list, TASK_VALUES, task_knob, ... */

/* ---- countdown ------------------------------------------------------------------------------------------------- */

enum { COUNTDOWN_NUMBERS = 6, COUNTDOWN_LIMIT = 1000000 };

typedef struct CountdownNode {
    int64_t value;
    char op;         /* 0: a given number */
    int left, right; /* nodes */
} CountdownNode;

typedef struct Countdown {
    CountdownNode node[2 * COUNTDOWN_NUMBERS]; /* given numbers, then intermediate results; the last is the result */
    int count;
} Countdown;

/* Computes a op b for a >= b > 0, or 0 if the rules do not allow the step or it is useless. */
static inline int64_t countdown_step(int64_t a, char op, int64_t b) {
    int64_t value = 0;
    switch (op) {
    case '+': value = a + b; break;
    case '-': value = a - b; break;
    case '*': value = b > 1 ? a * b : 0; break;
    default: value = b > 1 && a % b == 0 ? a / b : 0;
    }
    return value <= COUNTDOWN_LIMIT ? value : 0;
}

/* Joins two live nodes into a new one, the larger on the left, and writes the live nodes after that to `rest`; false if
 * the step is not allowed. */
static inline bool countdown_join(Countdown *c, const int *live, int n, int i, int j, char op, int *rest) {
    const bool swap = c->node[live[i]].value < c->node[live[j]].value;
    const int left = live[swap ? j : i], right = live[swap ? i : j];
    const int64_t value = countdown_step(c->node[left].value, op, c->node[right].value);
    if (!value) return false;
    int kept = 0;
    for (int k = 0; k < n; k++)
        if (k != i && k != j) rest[kept++] = live[k];
    rest[kept] = c->count;
    c->node[c->count++] = (CountdownNode){value, op, left, right};
    return true;
}

/* Depth-first search for exactly `steps` more joins, the last of which gives the target. */
static inline bool countdown_search(Countdown *c, const int *live, int n, int steps, int64_t target) {
    int rest[COUNTDOWN_NUMBERS];
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++)
            for (const char *op = "+-*/"; *op; op++) {
                if (!countdown_join(c, live, n, i, j, *op, rest)) continue;
                if (steps == 1 ? c->node[c->count - 1].value == target
                               : countdown_search(c, rest, n - 1, steps - 1, target))
                    return true;
                c->count--;
            }
    return false;
}

static inline void countdown_begin(Countdown *c, const int64_t *number, int n, int *live) {
    c->count = n;
    for (int i = 0; i < n; i++) {
        c->node[i] = (CountdownNode){number[i], 0, 0, 0};
        live[i] = i;
    }
}

/* Finds a solution with the fewest steps (1 to n - 1); false if there is none with positive whole steps. */
static inline bool countdown_solve(Countdown *c, const int64_t *number, int n, int64_t target) {
    int live[COUNTDOWN_NUMBERS];
    countdown_begin(c, number, n, live);
    for (int steps = 1; steps < n; steps++)
        if (countdown_search(c, live, n, steps, target)) return true;
    return false;
}

/* Joins all numbers at random; returns the result. */
static inline int64_t countdown_wander(Countdown *c, const int64_t *number, int n, Random *r) {
    int live[COUNTDOWN_NUMBERS], rest[COUNTDOWN_NUMBERS];
    countdown_begin(c, number, n, live);
    while (n > 1) {
        const int i = (int)random_below(r, (uint64_t)n), j = (int)random_below(r, (uint64_t)n);
        if (i == j || !countdown_join(c, live, n, i, j, "+-*/"[random_below(r, 4)], rest)) continue;
        memcpy(live, rest, sizeof live);
        n--;
    }
    return c->node[c->count - 1].value;
}

/* Writes the expression with the parentheses it needs. `above`: the enclosing operator, 0 for none; `right`: the node
 * is its right operand. */
static inline void countdown_print(const Countdown *c, int node, char above, bool right, TextBuffer *b) {
    const CountdownNode *x = &c->node[node];
    const bool sum = x->op == '+' || x->op == '-', product = above == '*' || above == '/';
    const bool wrap = x->op && ((sum && product) || (right && (above == '/' || (sum && above == '-'))));
    if (!x->op) {
        text_format(b, "%lld", (long long)x->value);
        return;
    }
    if (wrap) text_string(b, "(");
    countdown_print(c, x->left, x->op, false, b);
    text_append(b, &x->op, 1);
    countdown_print(c, x->right, x->op, true, b);
    if (wrap) text_string(b, ")");
}

static inline void task_countdown_problem(const TaskOptions *o, Random *r, Task *t) {
    static const int64_t numbers[5] = {3, 3, 4, 4, 5}, largest[5] = {9, 20, 25, 50, 99};
    const int n = t->count = (int)task_knob(o->items, o->level, numbers);
    const int64_t most = task_knob(o->largest, o->level, largest);
    Countdown c;
    for (bool good = false; !good;) {
        for (int i = 0; i < n; i++) t->value[i] = random_between(r, 1, most);
        t->result = countdown_wander(&c, t->value, n, r);
        good = t->result <= 10 * most;
        for (int i = 0; i < n; i++) good &= t->value[i] != t->result;
    }
    task_list(&t->prompt, t->value, n);
    text_format(&t->prompt, " -> %lld:", (long long)t->result);
    task_number(&t->answer, t->result, false);
    int64_t sorted[COUNTDOWN_NUMBERS];
    json_t *array = json_array();
    for (int i = 0; i < n; i++) {
        sorted[i] = t->value[i];
        json_array_append_new(array, json_integer(t->value[i]));
    }
    json_object_set_new(t->fields, "numbers", array);
    json_object_set_new(t->fields, "target", json_integer(t->result));
    qsort(sorted, (size_t)n, sizeof *sorted, task_compare);
    text_string(&t->key, "countdown ");
    task_list(&t->key, sorted, n);
    text_format(&t->key, " -> %lld", (long long)t->result);
}

/* A wrong demonstration is a correct one with its last operator replaced. False if the problem has no solution. */
static inline bool task_countdown_solve(TaskStyle style, bool wrong, Random *r, Task *t, Error *e) {
    Countdown c;
    if (!countdown_solve(&c, t->value, t->count, t->result))
        return error_set(e, "countdown: no solution of '%s'", t->prompt.text);
    CountdownNode *last = &c.node[c.count - 1];
    while (wrong) {
        const int64_t a = c.node[last->left].value, b = c.node[last->right].value;
        const char op = "+-*"[random_below(r, 3)];
        const int64_t value = op == '+' ? a + b : op == '-' ? a - b : a * b;
        if (value == t->result) continue;
        last->op = op;
        last->value = value;
        wrong = false;
    }
    if (style == TASK_SCRATCHPAD) {
        for (int i = t->count; i < c.count; i++)
            text_format(&t->completion, "%lld%c%lld=%lld\n", (long long)c.node[c.node[i].left].value, c.node[i].op,
                        (long long)c.node[c.node[i].right].value, (long long)c.node[i].value);
        text_string(&t->completion, "#### ");
    }
    countdown_print(&c, c.count - 1, 0, false, &t->completion);
    return true;
}

/* ---- sorting --------------------------------------------------------------------------------------------------- */

static inline void task_sort_problem(const TaskOptions *o, Random *r, Task *t) {
    static const int64_t items[5] = {3, 4, 6, 8, 10}, largest[5] = {9, 99, 99, 999, 999};
    t->count = (int)task_knob(o->items, o->level, items);
    const int64_t most = task_knob(o->largest, o->level, largest);
    int64_t sorted[TASK_VALUES];
    do {
        for (int i = 0; i < t->count; i++) sorted[i] = t->value[i] = random_between(r, 0, most);
        qsort(sorted, (size_t)t->count, sizeof *sorted, task_compare);
    } while (sorted[0] == sorted[t->count - 1]);
    text_string(&t->prompt, "sort ");
    task_list(&t->prompt, t->value, t->count);
    text_string(&t->prompt, ":");
    task_list(&t->answer, sorted, t->count);
    text_format(&t->key, "sort %s", t->answer.text);
}

/* A wrong demonstration has two different neighbours swapped. */
static inline void task_sort_solve(TaskStyle style, bool wrong, Random *r, Task *t) {
    int64_t sorted[TASK_VALUES];
    for (int n = 1; n <= t->count; n++) {
        memcpy(sorted, t->value, sizeof sorted);
        qsort(sorted, (size_t)n, sizeof *sorted, task_compare);
        if (style != TASK_SCRATCHPAD) continue;
        task_list(&t->completion, sorted, n);
        text_string(&t->completion, "\n");
    }
    while (wrong) {
        const int i = (int)random_below(r, (uint64_t)t->count - 1);
        const int64_t held = sorted[i];
        if (held == sorted[i + 1]) continue;
        sorted[i] = sorted[i + 1];
        sorted[i + 1] = held;
        wrong = false;
    }
    if (style == TASK_SCRATCHPAD) text_string(&t->completion, "#### ");
    task_list(&t->completion, sorted, t->count);
}

/* ---- brackets -------------------------------------------------------------------------------------------------- */

static inline void task_brackets_problem(const TaskOptions *o, Random *r, Task *t) {
    static const int64_t shown[5] = {6, 10, 16, 24, 40};
    const int most = (int)task_knob(o->items, o->level, shown), kinds = o->level == 1 && !o->items ? 2 : 3;
    char open[TASK_VALUES], text[TASK_VALUES + 1];
    int n, depth;
    do {
        n = (int)random_between(r, (most + 1) / 2, most);
        depth = 0;
        for (int i = 0; i < n; i++) {
            if (depth && random_below(r, 5) < 2) text[i] = open[--depth] == '(' ? ')' : open[depth] == '[' ? ']' : '}';
            else text[i] = open[depth++] = "([{"[random_below(r, (uint64_t)kinds)];
        }
    } while (!depth);
    text[n] = 0;
    text_format(&t->prompt, "close %s:", text);
    text_format(&t->key, "brackets %s", text);
    json_object_set_new(t->fields, "open", json_string(text));
    while (depth--) text_string(&t->answer, open[depth] == '(' ? ")" : open[depth] == '[' ? "]" : "}");
}

/* A wrong demonstration has one closer replaced by another kind. */
static inline void task_brackets_solve(TaskStyle style, bool wrong, Random *r, Task *t) {
    if (style == TASK_SCRATCHPAD) {
        char open[TASK_VALUES];
        int depth = 0;
        for (const char *c = json_string_value(json_object_get(t->fields, "open")); *c; c++) {
            if (strchr("([{", *c)) open[depth++] = *c;
            else depth--;
            text_append(&t->completion, open, (size_t)depth);
            text_string(&t->completion, "\n");
        }
        text_string(&t->completion, "#### ");
    }
    text_string(&t->completion, t->answer.text);
    char *said = t->completion.text + t->completion.length - t->answer.length;
    while (wrong) {
        char *at = &said[random_below(r, t->answer.length)];
        const char closer = ")]}"[random_below(r, 3)];
        if (closer == *at) continue;
        *at = closer;
        wrong = false;
    }
}

#endif
