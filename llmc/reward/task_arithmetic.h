/* task_arithmetic.h - problems of addition, subtraction, multiplication and short chains of them.
 *
 *   task         prompt      answer   direct   reversed   scratchpad
 *   add          57+68=      125      125      521        7+8=15 / 5+6+1=12 / #### 125         (columns, carries)
 *   sub          52-38=      14       14       41         12-8=4 / 5-3-1=1 / #### 14           (columns, borrowing)
 *   mul          57*68=      3876     3876     6783       57*8=456 / 57*60=3420 / 456+3420=3876 / #### 3876
 *   arithmetic   2+3*4=      14       14       41         3*4=12 / 2+12=14 / #### 14           (/ is a newline)
 *
 *   level        1          2               3               4                5
 *   add, sub     1 digit    2               3               4                5
 *   mul          1 x 1      2 x 1           2 x 2           3 x 2            3 x 3
 *   arithmetic   2 of 1     2 of 2          3 of 2          4 of 2           5 of 2   (5 operands of 2 digits)
 *
 * Operands are uniform over all numbers with the allowed digits. The key is the expression with sorted factors and
 * terms, so 2+3*4 and 4*3+2 are the same problem, across tasks too. Chains have products from level 2 on,
 * each with one factor below 10.
 */
#ifndef LLMC_REWARD_TASK_ARITHMETIC_H
#define LLMC_REWARD_TASK_ARITHMETIC_H

#include "../base/random.h" /* Random, random_between, random_below */
#include "../base/text.h"   /* text_format, TextBuffer, text_string, text_append */
#include "task.h"           /* Task, TASK_ARITHMETIC, task_number, task_knob, ... */

/* 10^digits */
static inline int64_t task_power(int digits) {
    int64_t power = 1;
    while (digits-- > 0) power *= 10;
    return power;
}

static inline int64_t task_operand(Random *r, int low, int high) {
    return random_between(r, low <= 1 ? 0 : task_power(low - 1), task_power(high) - 1);
}

/* Index after the product that begins at i: v[i] * v[i+1] * ... */
static inline int task_product_end(const Task *t, int i) {
    for (i++; i < t->count && t->op[i] == '*'; i++) {}
    return i;
}

static inline int64_t task_product(const Task *t, int from, int to) {
    int64_t product = 1;
    for (int i = from; i < to; i++) product *= t->value[i];
    return product;
}

static inline int64_t task_evaluate(const Task *t) {
    int64_t sum = 0;
    for (int i = 0, end; i < t->count; i = end) {
        end = task_product_end(t, i);
        sum += t->op[i] == '-' ? -task_product(t, i, end) : task_product(t, i, end);
    }
    return sum;
}

static inline int task_compare_text(const void *a, const void *b) { return strcmp((const char *)a, (const char *)b); }

/* Writes the signed products, each with ascending factors, sorted as text. */
static inline void task_arithmetic_key(const Task *t, TextBuffer *key) {
    char term[8][128];
    int terms = 0;
    for (int i = 0, end; i < t->count; i = end) {
        int64_t factor[8];
        int n = 0, used = snprintf(term[terms], sizeof term[0], "%c", t->op[i]);
        end = task_product_end(t, i);
        for (int k = i; k < end; k++) factor[n++] = t->value[k];
        qsort(factor, (size_t)n, sizeof *factor, task_compare);
        for (int k = 0; k < n; k++)
            used += snprintf(term[terms] + used, sizeof term[0] - (size_t)used, "%s%lld", k ? "*" : "",
                             (long long)factor[k]);
        terms++;
    }
    qsort(term, (size_t)terms, sizeof term[0], task_compare_text);
    for (int i = 0; i < terms; i++) text_string(key, term[i]);
}

static inline void task_arithmetic_problem(const TaskOptions *o, Random *r, Task *t) {
    static const int64_t digits[5] = {1, 2, 3, 4, 5}, left[5] = {1, 2, 2, 3, 3}, right[5] = {1, 1, 2, 2, 3},
                         chain[5] = {1, 2, 2, 2, 2}, operands[5] = {2, 2, 3, 4, 5};
    const int low = o->min_digits;
    t->op[0] = '+';
    t->count = t->kind == TASK_ARITHMETIC ? (int)task_knob(o->items, o->level, operands) : 2;
    for (int i = 0; i < t->count; i++) {
        const int64_t *levels = t->kind == TASK_ARITHMETIC ? chain : t->kind != TASK_MUL ? digits : i ? right : left;
        t->value[i] = task_operand(r, low, (int)task_knob(o->digits, o->level, levels));
        if (i == 0) continue;
        t->op[i] = t->kind == TASK_ADD ? '+' : t->kind == TASK_SUB ? '-' : '*';
        if (t->kind != TASK_ARITHMETIC) continue;
        const bool product = (o->level > 1 || o->digits || o->items) && t->op[i - 1] != '*';
        t->op[i] = "+-*"[random_below(r, product ? 3 : 2)];
        if (t->op[i] == '*') t->value[i] = random_between(r, 2, 9);
    }
    t->result = task_evaluate(t);
    for (int i = 0; i < t->count; i++) {
        if (i) text_append(&t->prompt, &t->op[i], 1);
        task_number(&t->prompt, t->value[i], false);
    }
    text_string(&t->prompt, "=");
    task_number(&t->answer, t->result, false);
    task_arithmetic_key(t, &t->key);
}

/* Column addition, or subtraction with y <= x: one line per digit, least significant first. */
static inline void task_columns(TextBuffer *b, int64_t x, int64_t y, char op) {
    for (int carry = 0, first = 1; first || x || y; first = 0) {
        const int p = (int)(x % 10), q = (int)(y % 10);
        const int raw = op == '+' ? p + q + carry : p - q - carry;
        const int borrow = raw < 0 ? 10 : 0;
        text_format(b, "%d%c%d", p + borrow, op, q);
        if (carry) text_format(b, "%c1", op);
        text_format(b, "=%d\n", raw + borrow);
        carry = op == '+' ? raw / 10 : borrow / 10;
        x /= 10;
        y /= 10;
    }
}

/* x times each digit of y, with a running sum. */
static inline void task_partial_products(TextBuffer *b, int64_t x, int64_t y) {
    int64_t sum = 0, place = 1;
    bool first = true;
    for (; y || first; y /= 10, place *= 10) {
        const int64_t part = y % 10 * place;
        if (!part && (y || !first)) continue;
        text_format(b, "%lld*%lld=%lld\n", (long long)x, (long long)part, (long long)(x * part));
        if (!first)
            text_format(b, "%lld+%lld=%lld\n", (long long)sum, (long long)(x * part), (long long)(sum + x * part));
        sum += x * part;
        first = false;
    }
}

static inline void task_arithmetic_work(const Task *t, TextBuffer *b) {
    const int64_t x = t->value[0], y = t->value[1];
    if (t->count == 2 && t->op[1] == '+') task_columns(b, x, y, '+');
    else if (t->count == 2 && t->op[1] == '-') task_columns(b, x < y ? y : x, x < y ? x : y, '-');
    else if (t->count == 2) task_partial_products(b, x, y);
    else {
        int64_t sum = 0;
        for (int i = 0, end; i < t->count; i = end) {
            end = task_product_end(t, i);
            const long long product = task_product(t, i, end);
            if (end > i + 1)
                text_format(b, "%lld*%lld=%lld\n", (long long)t->value[i], (long long)t->value[i + 1], product);
            if (i) text_format(b, "%lld%c%lld=", (long long)sum, t->op[i], product);
            sum += t->op[i] == '-' ? -product : product;
            if (i) text_format(b, "%lld\n", (long long)sum);
        }
    }
}

static inline void task_arithmetic_solve(TaskStyle style, bool wrong, Random *r, Task *t) {
    const int64_t said = wrong ? task_wrong_number(t->result, r) : t->result;
    if (style == TASK_SCRATCHPAD) {
        task_arithmetic_work(t, &t->completion);
        text_string(&t->completion, "#### ");
    }
    task_number(&t->completion, said, style == TASK_REVERSED);
}

#endif
