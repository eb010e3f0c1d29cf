/* tasks.h - one interface to all generators of verifiable problems. The formats and levels of the tasks are described
 * in task_arithmetic.h, task_puzzles.h, task_word.h and task_tools.h; keys and the held-out split in task.h.
 *
 *     Task t = {0};
 *     const TaskOptions o = {.level = 2, .min_digits = 1};
 *     Random r = random_start(seed, RANDOM_TASK + record);
 *     task_problem(&t, TASK_ADD, &o, &r);                   // t.prompt, t.answer, t.key, t.fields
 *     if (!task_held_out(&t) && !task_solve(&t, &o, false, &r, &e)) die("%s", e.text);        // t.completion
 *     task_free(&t);
 */
#ifndef LLMC_REWARD_TASKS_H
#define LLMC_REWARD_TASKS_H

#include "../base/error.h"   /* error_set, Error */
#include "../base/random.h"  /* Random */
#include "task.h"            /* TASK_BIGMUL, TaskStyle, TASK_ARITHMETIC, TASK_BRACKETS, ... */
#include "task_arithmetic.h" /* task_arithmetic_problem, task_arithmetic_solve */
#include "task_puzzles.h"    /* COUNTDOWN_NUMBERS, task_brackets_problem, task_brackets_solve, ... */
#include "task_tools.h"      /* task_bigmul_problem, task_bigmul_solve, task_guess_problem, task_guess_solve, ... */
#include "task_word.h"       /* task_word_problem, task_word_solve */

/* Resolves TASK_AUTO: scratchpad for word problems, direct otherwise. */
static inline TaskStyle task_style(TaskKind kind, TaskStyle style) {
    return style != TASK_AUTO ? style : kind == TASK_WORD ? TASK_SCRATCHPAD : TASK_DIRECT;
}

/* Checks that the options fit the task. */
static inline bool task_check(TaskKind kind, const char *name, const TaskOptions *o, Error *e) {
    static const int most[TASK_KINDS] = {2, 2, 2, 8, COUNTDOWN_NUMBERS, TASK_VALUES, TASK_VALUES, 12, 2, 2, 1};
    static const int least[TASK_KINDS] = {2, 2, 2, 2, 2, 2, 1, 1, 2, 1, 1};
    const bool numbers = kind <= TASK_ARITHMETIC || kind == TASK_BIGMUL;
    const int digits = kind == TASK_MUL || kind == TASK_BIGMUL ? 9 : kind == TASK_ARITHMETIC ? 9 : 18;
    if (o->style != TASK_AUTO && kind >= TASK_BIGMUL)
        return error_set(e, "style: does not apply to %s, whose demonstrations call a tool", name);
    if (o->style == TASK_REVERSED && kind > TASK_ARITHMETIC)
        return error_set(e, "style reversed: %s has no number to reverse, only add, sub, mul and arithmetic have one",
                         name);
    if (numbers && o->digits > digits)
        return error_set(e, "digits: %d is too many for %s, the maximum is %d", o->digits, name, digits);
    if (o->min_digits > 1 && o->digits < o->min_digits)
        return error_set(e, "min-digits: %d needs --digits of at least %d", o->min_digits, o->min_digits);
    if (!numbers && o->digits) return error_set(e, "digits: does not apply to %s, use --items or --largest", name);
    if (numbers && o->largest) return error_set(e, "largest: %s takes --digits instead", name);
    if ((kind == TASK_BRACKETS || kind == TASK_GUESS) && o->largest)
        return error_set(e, "largest: %s has no numbers", name);
    if (kind == TASK_LOOKUP && o->largest && o->largest < 3)
        return error_set(e, "largest: lookup needs at least 3 facts");
    if (o->items && (o->items < least[kind] || o->items > most[kind]))
        return error_set(e, "items: %d is out of range [%d, %d] for %s", o->items, least[kind], most[kind], name);
    return true;
}

/* Draws a problem: prompt, answer, key and fields. The options must have passed task_check(). */
static inline void task_problem(Task *t, TaskKind kind, const TaskOptions *o, Random *r) {
    task_clear(t);
    t->kind = kind;
    if (!o->digits && !o->items && !o->largest) json_object_set_new(t->fields, "level", json_integer(o->level));
    switch (kind) {
    case TASK_COUNTDOWN: task_countdown_problem(o, r, t); break;
    case TASK_SORT: task_sort_problem(o, r, t); break;
    case TASK_BRACKETS: task_brackets_problem(o, r, t); break;
    case TASK_WORD: task_word_problem(o, r, t); break;
    case TASK_BIGMUL: task_bigmul_problem(o, r, t); break;
    case TASK_LOOKUP: task_lookup_problem(o, r, t); break;
    case TASK_GUESS: task_guess_problem(r, t); break;
    default: task_arithmetic_problem(o, r, t);
    }
    const TaskStyle style = task_style(kind, o->style);
    if (style == TASK_REVERSED) json_object_set_new(t->fields, "style", json_string("reversed"));
    if (style == TASK_SCRATCHPAD) json_object_set_new(t->fields, "style", json_string("scratchpad"));
}

/* Writes the demonstration of the problem that was drawn; `wrong`: one of the same form with a wrong answer. False if
 * the problem has no solution, which no problem of task_problem() lacks. */
static inline bool task_solve(Task *t, const TaskOptions *o, bool wrong, Random *r, Error *e) {
    const TaskStyle style = task_style(t->kind, o->style);
    switch (t->kind) {
    case TASK_COUNTDOWN: return task_countdown_solve(style, wrong, r, t, e);
    case TASK_SORT: task_sort_solve(style, wrong, r, t); break;
    case TASK_BRACKETS: task_brackets_solve(style, wrong, r, t); break;
    case TASK_WORD: task_word_solve(style, wrong, r, t); break;
    case TASK_BIGMUL: task_bigmul_solve(wrong, r, t); break;
    case TASK_LOOKUP: task_lookup_solve(o, wrong, r, t); break;
    case TASK_GUESS: task_guess_solve(wrong, r, t); break;
    default: task_arithmetic_solve(style, wrong, r, t);
    }
    return true;
}

#endif
