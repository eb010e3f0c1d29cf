/* task_word.h - word problems: a story of a few arithmetic steps, whose solution ends in `#### n`.
 *
 *     Mia has 12 apples. She buys 3 boxes with 4 apples in each. She gives 5 to a friend.
 *     How many apples does Mia have now?
 *
 *   direct        #### 19
 *   scratchpad    3*4=12 / 12+12=24 / 24-5=19 / #### 19           (the default; / is a newline)
 *
 *   level         1 to 5: 1 to 5 steps, with numbers up to 10, 20, 50, 100, 100
 *
 * The key holds the numbers and operations, but not the names and things.
 */
#ifndef LLMC_REWARD_TASK_WORD_H
#define LLMC_REWARD_TASK_WORD_H

#include "../base/random.h" /* random_between, Random, random_below */
#include "../base/text.h"   /* text_format, TextBuffer, text_string */
#include "task.h"           /* Task, task_knob, task_number, TASK_SCRATCHPAD, ... */

enum { WORD_LIMIT = 1000000 };

/* Adds a random step; false if it is not possible. Steps, by t->op: + finds more, - gives away, x buys boxes (uses two
 * values), * times as many, / keeps one of equal piles. */
static inline bool task_word_step(Task *t, int64_t most, Random *r) {
    const char op = "+-x*/"[random_below(r, 5)];
    const int i = t->count;
    int64_t k = random_between(r, 2, most), have = t->result;
    switch (op) {
    case '+': have += k; break;
    case '-': have -= k; break;
    case 'x':
        t->value[i + 1] = random_between(r, 2, most < 12 ? most : 12);
        t->op[i + 1] = 0;
        have += k * t->value[i + 1];
        break;
    case '*':
        k = random_between(r, 2, 3);
        have *= k;
        break;
    default:
        k = random_between(r, 2, 5);
        if (have % k) return false;
        have /= k;
    }
    if (have < 1 || have > WORD_LIMIT) return false;
    t->value[i] = k;
    t->op[i] = op;
    t->result = have;
    t->count += op == 'x' ? 2 : 1;
    return true;
}

static inline void task_word_problem(const TaskOptions *o, Random *r, Task *t) {
    static const int64_t steps_of[5] = {1, 2, 3, 4, 5}, largest[5] = {10, 20, 50, 100, 100};
    static const struct {
        const char *name, *pronoun;
    } people[] = {{"Mia", "She"}, {"Tom", "He"}, {"Ada", "She"}, {"Ben", "He"},
                  {"Zoe", "She"}, {"Max", "He"}, {"Eva", "She"}, {"Leo", "He"}};
    static const char *const things[] = {"apples", "books", "coins", "shells", "cards", "pens", "stones", "stamps"};
    const int64_t most = task_knob(o->largest, o->level, largest);
    const int steps = (int)task_knob(o->items, o->level, steps_of);
    const int who = (int)random_below(r, sizeof people / sizeof *people);
    const char *name = people[who].name, *pronoun = people[who].pronoun;
    const char *thing = things[random_below(r, sizeof things / sizeof *things)];
    t->value[0] = t->result = random_between(r, 2, most);
    t->op[0] = 0;
    t->count = 1;
    for (int done = 0; done < steps;) done += task_word_step(t, most, r);
    text_format(&t->prompt, "%s has %lld %s.", name, (long long)t->value[0], thing);
    text_format(&t->key, "word %lld", (long long)t->value[0]);
    for (int i = 1; i < t->count; i++) {
        const long long k = t->value[i], each = i + 1 < t->count ? t->value[i + 1] : 0;
        switch (t->op[i]) {
        case '+': text_format(&t->prompt, " %s finds %lld more.", pronoun, k); break;
        case '-': text_format(&t->prompt, " %s gives %lld to a friend.", pronoun, k); break;
        case 'x': text_format(&t->prompt, " %s buys %lld boxes with %lld %s in each.", pronoun, k, each, thing); break;
        case '*': text_format(&t->prompt, " By magic there are now %lld times as many.", k); break;
        case '/': text_format(&t->prompt, " %s makes %lld equal piles and keeps one of them.", pronoun, k); break;
        default: break; /* the number of items per box, the second value of 'x' */
        }
        if (t->op[i]) text_format(&t->key, " %c%lld", t->op[i] == 'x' ? '+' : t->op[i], k);
        else text_format(&t->key, "x%lld", k);
    }
    text_format(&t->prompt, " How many %s does %s have now?\n", thing, name);
    task_number(&t->answer, t->result, false);
}

static inline void task_word_solve(TaskStyle style, bool wrong, Random *r, Task *t) {
    long long have = t->value[0];
    TextBuffer *b = &t->completion;
    const int count = style == TASK_SCRATCHPAD ? t->count : 0;
    for (int i = 1; i < count; i++) {
        long long k = t->value[i], before = have;
        char op = t->op[i];
        if (op == 'x') {
            text_format(b, "%lld*%lld=%lld\n", k, (long long)t->value[i + 1], k * (long long)t->value[i + 1]);
            k *= t->value[++i];
            op = '+';
        }
        have = op == '+' ? have + k : op == '-' ? have - k : op == '*' ? have * k : have / k;
        text_format(b, "%lld%c%lld=%lld\n", before, op, k, have);
    }
    text_string(b, "#### ");
    task_number(b, wrong ? task_wrong_number(t->result, r) : t->result, false);
}

#endif
