/* verify_expression.h - arithmetic expressions in exact fractions: the check of countdown.
 *
 *   answer    = sum [`=` sum]                        on the last line; the second sum must have the value of the first
 *   sum       = product { (`+` | `-`) product }
 *   product   = factor { (`*` | `/`) factor }
 *   factor    = { `-` } (digits | `(` sum `)`)       also U+2212, U+00D7 and U+00F7; white space anywhere but in digits
 *
 * In countdown (TinyZero 2025; Gandhi et al. 2024, Stream of Search) the record's field `numbers` (or `nums`) gives the
 * numbers, each of which may be used at most as often as it is given, and `target`, or else the record's answer, the
 * value that the expression must have. Not all numbers have to be used, unless the record's field `use_all` is true or
 * the reward is `countdown=all` (TinyZero: each exactly once).
 *
 * Limits: numbers are below 2^63, values have at most 1,000 digits, and a step that exceeds them or divides by zero
 * makes the expression wrong; parentheses nest at most 100 deep, which bounds the recursion; an expression has at most
 * 64 numbers, and so has a record (more cannot be scored).
 *
 *     VerifyExpression expression;
 *     char number[VERIFY_NUMBER_SIZE];
 *     mpq_t half;
 *     rational_init(half);
 *     if (verify_final_expression(verify_span("(1 + 2) / 6 = 1/2"), &expression, half) && rational_print(half, number))
 *         printf("%d numbers, %s\n", expression.count, number);                                      // 3 numbers, 0.5
 *     rational_clear(half);
 */
#ifndef LLMC_REWARD_VERIFY_EXPRESSION_H
#define LLMC_REWARD_VERIFY_EXPRESSION_H

#include "verify_answer.h"   /* VerifySpan, RewardInput, verify_present, verify_span, ... */
#include "verify_number.h"   /* VerifyNumber, verify_answer_number, verify_digits_end, verify_number_free, ... */
#include "verify_rational.h" /* gmp, rational_clear, rational_init, rational_available, ... */

enum {
    VERIFY_DEPTH = 100,   /* maximum nesting of an expression */
    VERIFY_OPERANDS = 64, /* maximum number of numbers in an expression */
};

typedef struct VerifyExpression {
    VerifySpan text;
    size_t at;
    int depth, count;
    int64_t operands[VERIFY_OPERANDS]; /* the numbers read so far, in order */
} VerifyExpression;

/* value = value op right; false for a division by zero or if the result exceeds the limits. */
static inline bool verify_operate(mpq_ptr value, char op, mpq_srcptr right) {
    if (op == '/' && !mpq_sgn(right)) return false;
    (op == '+' ? gmp()->add : op == '-' ? gmp()->sub : op == '*' ? gmp()->mul : gmp()->div)(value, value, right);
    return rational_fits(value);
}

/* The operator at e->at as one of + - * / ( ) =, or 0 if there is none; *width is its length in bytes. */
static inline char verify_operator(VerifyExpression *e, size_t *width) {
    static const struct {
        const char *sign, op;
    } signs[] = {{"+", '+'}, {"-", '-'},      {"*", '*'},      {"/", '/'},      {"(", '('},
                 {")", ')'}, {"\u2212", '-'}, {"\u00d7", '*'}, {"\u00f7", '/'}, {"=", '='}};
    while (e->at < e->text.n && verify_space(e->text.s[e->at])) e->at++;
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        if (verify_starts(e->text, e->at, signs[i].sign)) {
            *width = strlen(signs[i].sign);
            return signs[i].op;
        }
    return 0;
}

/* sum = product { (+|-) product };  product = factor { (*|/) factor };  factor = {-} (number | "(" sum ")") */
static inline bool verify_sum(VerifyExpression *e, mpq_ptr value);

static inline bool verify_factor(VerifyExpression *e, mpq_ptr value) {
    size_t width;
    bool negative = false;
    char op;
    while ((op = verify_operator(e, &width)) == '-') {
        e->at += width;
        negative = !negative;
    }
    if (op == '(') {
        e->at += width;
        if (++e->depth > VERIFY_DEPTH || !verify_sum(e, value) || verify_operator(e, &width) != ')') return false;
        e->at += width;
        e->depth--;
    } else {
        const size_t end = verify_digits_end(e->text, e->at);
        int64_t number = 0;
        if (end == e->at || e->count == VERIFY_OPERANDS) return false;
        for (; e->at < end; e->at++)
            if (__builtin_mul_overflow(number, (int64_t)10, &number) ||
                __builtin_add_overflow(number, (int64_t)(e->text.s[e->at] - '0'), &number))
                return false;
        e->operands[e->count++] = number;
        rational_whole(value, (unsigned long)number);
    }
    if (negative) rational_negate(value);
    return true;
}

static inline bool verify_product(VerifyExpression *e, mpq_ptr value) {
    size_t width;
    char op;
    if (!verify_factor(e, value)) return false;
    while ((op = verify_operator(e, &width)) == '*' || op == '/') {
        mpq_t right;
        rational_init(right);
        e->at += width;
        const bool good = verify_factor(e, right) && verify_operate(value, op, right);
        rational_clear(right);
        if (!good) return false;
    }
    return true;
}

static inline bool verify_sum(VerifyExpression *e, mpq_ptr value) {
    size_t width;
    char op;
    if (!verify_product(e, value)) return false;
    while ((op = verify_operator(e, &width)) == '+' || op == '-') {
        mpq_t right;
        rational_init(right);
        e->at += width;
        const bool good = verify_product(e, right) && verify_operate(value, op, right);
        rational_clear(right);
        if (!good) return false;
    }
    return true;
}

/* Parses all of `text` as an expression, optionally followed by "= value"; e->operands are those of the expression. */
static inline bool verify_expression(VerifySpan text, VerifyExpression *e, mpq_ptr value) {
    size_t width;
    *e = (VerifyExpression){.text = text};
    if (!verify_sum(e, value)) return false;
    if (verify_operator(e, &width) == '=') {
        VerifyExpression stated = {.text = text, .at = e->at + width};
        mpq_t said;
        rational_init(said);
        const bool same = verify_sum(&stated, said) && gmp()->equal(said, value);
        rational_clear(said);
        verify_operator(&stated, &width);
        return same && stated.at == text.n;
    }
    return e->at == text.n;
}

/* Parses the last line of a completion's final answer as an expression. */
static inline bool verify_final_expression(VerifySpan completion, VerifyExpression *e, mpq_ptr value) {
    VerifyMark mark;
    return verify_expression(verify_last_line(verify_final(completion, &mark)), e, value);
}

/* Whether the operands are among the given numbers, each used at most as often as it is given; all: exactly as often.
 * numbers: a list of integers. */
static inline bool verify_operands(const VerifyExpression *e, const json_t *numbers, bool all) {
    const size_t given = json_array_size(numbers);
    bool taken[VERIFY_OPERANDS] = {false};
    for (int i = 0; i < e->count; i++) {
        size_t k = 0;
        while (k < given && (taken[k] || json_integer_value(json_array_get(numbers, k)) != e->operands[i])) k++;
        if (k == given) return false;
        taken[k] = true;
    }
    return !all || (size_t)e->count == given;
}

/* Reads the target of a record. */
static inline bool verify_target(const RewardInput *in, const json_t *fields, VerifyNumber *v) {
    const json_t *target = json_object_get(fields, "target");
    char text[32];
    if (!json_is_integer(target)) return verify_answer_number(verify_span(in->answer), true, v);
    snprintf(text, sizeof text, "%lld", (long long)json_integer_value(target));
    return verify_answer_number(verify_span(text), false, v);
}

/* Right if the expression uses only the given numbers and its value is the target. all: it must use each number, as if
 * the record's field `use_all` were true. */
static inline float verify_countdown(const RewardInput *in, const json_t *fields, bool all) {
    const json_t *numbers = verify_present(fields, "numbers");
    if (!numbers) numbers = verify_present(fields, "nums");
    const size_t given = json_array_size(numbers);
    if (!given || given > VERIFY_OPERANDS || !rational_available(NULL)) return NAN;
    VerifyNumber wanted;
    VerifyExpression e;
    mpq_t value;
    float score = NAN;
    verify_number_new(&wanted);
    rational_init(value);
    all = all || json_is_true(json_object_get(fields, "use_all"));
    if (verify_target(in, fields, &wanted))
        score = verify_final_expression(verify_completion(in), &e, value) && verify_operands(&e, numbers, all) &&
                gmp()->equal(value, wanted.value);
    rational_clear(value);
    verify_number_free(&wanted);
    return score;
}

#endif
