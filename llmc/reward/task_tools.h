/* task_tools.h - problems for models that call tools: what the answer needs cannot be in the weights.
 *
 *   task     prompt                     answer      tool                          level     1    2    3     4     5
 *   bigmul   4821*9365=                 45148665    calculator                    digits    4    4    5     5     6
 *   lookup   What does k17 lead to?     k83         search, over the facts        facts     50   100  300   1000  3000
 *   guess    Guess my number, 1 to 31.  23          a program that answers turns  -
 *
 * The facts of lookup are drawn by the seed alone: "k17 leads to k83." for each key; --items 2 asks for two steps
 * ("What does k17 lead to in two steps?"). The held-out problems ask for other keys; files about the same facts have the
 * same seed. guess is a game: doc/agents.md has
 * its program.
 *
 * A demonstration has steps before its completion: {"name", "arguments", "result"} for a call, {"said", "result"} for a
 * turn that is answered by a user. A wrong one calls with a wrong argument (bigmul), repeats the key that it asked for
 * instead of what that leads to (lookup), or guesses at random (guess).
 */
#ifndef LLMC_REWARD_TASK_TOOLS_H
#define LLMC_REWARD_TASK_TOOLS_H

#include "../base/random.h"  /* Random, random_between, random_below, RANDOM_TASK, ... */
#include "../base/text.h"    /* text_format, TextBuffer, text_free, text_string */
#include "task.h"            /* Task, TaskOptions, task_knob, task_wrong_number */
#include "task_arithmetic.h" /* task_power */

enum { TASK_GUESS_MOST = 31 };

/* The stream of the facts, after those of the records. */
#define TASK_FACTS (RANDOM_TASK + (1ull << 48))

static inline int64_t task_facts(const TaskOptions *o) {
    static const int64_t facts[5] = {50, 100, 300, 1000, 3000};
    return task_knob(o->largest, o->level, facts);
}

/* The key that key number i leads to. */
static inline int64_t task_fact(uint64_t seed, int64_t facts, int64_t i) {
    Random r = random_start(seed, TASK_FACTS + (uint64_t)i);
    const int64_t other = (int64_t)random_below(&r, (uint64_t)facts - 1);
    return other + (other >= i);
}

/* Adds a call of a tool with one argument, and its result, to a demonstration. */
static inline void task_step(Task *t, const char *tool, const char *argument, const char *value, const char *result) {
    json_array_append_new(t->steps,
                          json_pack("{s:s,s:{s:s},s:s}", "name", tool, "arguments", argument, value, "result", result));
}

static inline void task_bigmul_problem(const TaskOptions *o, Random *r, Task *t) {
    static const int64_t digits[5] = {4, 4, 5, 5, 6};
    const int high = (int)task_knob(o->digits, o->level, digits), low = o->min_digits > 1 ? o->min_digits
                                                                        : high < 4        ? 1
                                                                                          : 4;
    t->count = 2;
    for (int i = 0; i < 2; i++) t->value[i] = random_between(r, task_power(low - 1), task_power(high) - 1);
    t->result = t->value[0] * t->value[1];
    const int larger = t->value[1] > t->value[0];
    text_format(&t->prompt, "%lld*%lld=", (long long)t->value[0], (long long)t->value[1]);
    text_format(&t->answer, "%lld", (long long)t->result);
    text_format(&t->key, "%lld*%lld", (long long)t->value[!larger], (long long)t->value[larger]);
}

static inline void task_bigmul_solve(bool wrong, Random *r, Task *t) {
    char expression[64], result[32];
    const int64_t x = wrong ? task_wrong_number(t->value[0], r) : t->value[0];
    snprintf(expression, sizeof expression, "%lld*%lld", (long long)x, (long long)t->value[1]);
    snprintf(result, sizeof result, "%lld", (long long)(x * t->value[1]));
    task_step(t, "calculator", "expression", expression, result);
    text_string(&t->completion, result);
}

static inline void task_lookup_problem(const TaskOptions *o, Random *r, Task *t) {
    const int64_t facts = task_facts(o), hops = o->items ? o->items : 1;
    t->count = (int)hops + 1;
    t->value[0] = (int64_t)random_below(r, (uint64_t)facts);
    for (int i = 1; i < t->count; i++) t->value[i] = task_fact(r->seed, facts, t->value[i - 1]);
    text_format(&t->prompt, "What does k%lld lead to%s?", (long long)t->value[0], hops == 2 ? " in two steps" : "");
    text_format(&t->answer, "k%lld", (long long)t->value[hops]);
    text_format(&t->key, "lookup %lld", (long long)t->value[0]);
}

/* Writes the document of fact number i: its title, and its text. */
static inline void task_lookup_document(uint64_t seed, int64_t facts, int64_t i, TextBuffer *title, TextBuffer *text) {
    text_format(title, "k%lld", (long long)i);
    text_format(text, "k%lld leads to k%lld.", (long long)i, (long long)task_fact(seed, facts, i));
}

/* Writes what the tool `search` finds for a key (tools/search.h): its own document, which has the key twice, then those
 * that lead to it, in their order; all have the same length. At most three. */
static inline void task_lookup_result(uint64_t seed, int64_t facts, int64_t key, TextBuffer *out) {
    int found = 0;
    for (int64_t i = -1; i < facts && found < 3; i++) {
        const int64_t at = i < 0 ? key : i;
        if (i >= 0 && (i == key || task_fact(seed, facts, i) != key)) continue;
        text_format(out, "Doc %d(Title: ", ++found);
        TextBuffer text = {0};
        task_lookup_document(seed, facts, at, out, &text);
        text_format(out, ") %s\n", text.text);
        text_free(&text);
    }
}

static inline void task_lookup_solve(const TaskOptions *o, bool wrong, const Random *r, Task *t) {
    const int64_t facts = task_facts(o);
    for (int i = 1; i < t->count; i++) {
        char query[32];
        TextBuffer result = {0};
        snprintf(query, sizeof query, "k%lld", (long long)t->value[i - 1]);
        task_lookup_result(r->seed, facts, t->value[i - 1], &result);
        task_step(t, "search", "query", query, result.text);
        text_free(&result);
    }
    text_format(&t->completion, "k%lld", (long long)t->value[wrong ? t->count - 2 : t->count - 1]);
}

static inline void task_guess_problem(Random *r, Task *t) {
    text_format(&t->prompt, "Guess my number, 1 to %d.", TASK_GUESS_MOST);
    t->result = random_between(r, 1, TASK_GUESS_MOST);
    text_format(&t->answer, "%lld", (long long)t->result);
    text_format(&t->key, "guess %lld", (long long)t->result);
}

/* Bisection; wrong: five numbers at random, none of which is right. */
static inline void task_guess_solve(bool wrong, Random *r, Task *t) {
    int64_t low = 1, high = TASK_GUESS_MOST, said = (low + high) / 2;
    for (int turn = 1;; turn++) {
        char text[24];
        if (wrong) do
                said = random_between(r, 1, TASK_GUESS_MOST);
            while (said == t->result);
        snprintf(text, sizeof text, "%lld", (long long)said);
        if (said == t->result || turn == 5) {
            text_string(&t->completion, text);
            return;
        }
        json_array_append_new(t->steps,
                              json_pack("{s:s,s:s}", "said", text, "result", said < t->result ? "higher" : "lower"));
        if (said < t->result) low = said + 1;
        else high = said - 1;
        said = (low + high) / 2;
    }
}

#endif
