/* verify_expression.h - arithmetic expressions in exact fractions: the check of countdown.
 *
 *   answer    = sum [`=` sum]                        on the last line; the second sum must have the value of the first
 *   sum       = product { (`+` | `-`) product }
 *   product   = factor { (`*` | `/`) factor }
 *   factor    = { `-` } (digits | `(` sum `)`)       also U+2212, U+00D7 and U+00F7; white space anywhere but in digits
 *
 * In countdown (TinyZero 2025; Gandhi et al. 2024, Stream of Search) the record's field `numbers` (or `nums`) gives the
 * numbers, each of which may be used at most as often as it is given, and `target`, or else the record's answer, the
 * value that the expression must have. Not all numbers have to be used.
 *
 * Limits: values are reduced 64-bit fractions, and a step that overflows or divides by zero makes the expression wrong;
 * parentheses nest at most 100 deep, which bounds the recursion; an expression has at most 64 numbers, and so has a
 * record (more cannot be scored).
 *
 *     VerifyExpression expression;
 *     VerifyRational value;
 *     if (verify_final_expression("(1 + 2) / 4 = 3/4", &expression, &value))
 *         printf("%d numbers, %lld/%lld\n", expression.count, (long long)value.p, (long long)value.q);    // 3, 3/4
 */
#ifndef LLMC_REWARD_VERIFY_EXPRESSION_H
#define LLMC_REWARD_VERIFY_EXPRESSION_H

#include "verify_answer.h" /* VerifySpan, RewardInput, VerifyMark, verify_final, ... */
#include "verify_number.h" /* VERIFY_NUMBER_SIZE, verify_digits_end, verify_final_number, verify_gcd, ... */

enum {
    VERIFY_DEPTH = 100,   /* maximum nesting of an expression */
    VERIFY_OPERANDS = 64, /* maximum number of numbers in an expression */
};

typedef struct VerifyRational {
    int64_t p, q; /* p / q in lowest terms, q > 0, p > INT64_MIN */
} VerifyRational;

typedef struct VerifyExpression {
    VerifySpan text;
    size_t at;
    int depth, count;
    int64_t operands[VERIFY_OPERANDS]; /* the numbers read so far, in order */
} VerifyExpression;

static inline bool verify_rational(__int128 p, __int128 q, VerifyRational *r) {
    if (!q) return false;
    if (q < 0) {
        p = -p;
        q = -q;
    }
    const __int128 g = (__int128)verify_gcd((unsigned __int128)(p < 0 ? -p : p), (unsigned __int128)q);
    p /= g;
    q /= g;
    if (p > INT64_MAX || p < -INT64_MAX || q > INT64_MAX) return false;
    *r = (VerifyRational){(int64_t)p, (int64_t)q};
    return true;
}

/* Computes a op b; false on overflow or division by zero. |p| and q are below 2^63, so no step exceeds 128 bits. */
static inline bool verify_operate(VerifyRational a, char op, VerifyRational b, VerifyRational *r) {
    const __int128 ap = a.p, aq = a.q, bp = b.p, bq = b.q;
    switch (op) {
    case '+': return verify_rational(ap * bq + bp * aq, aq * bq, r);
    case '-': return verify_rational(ap * bq - bp * aq, aq * bq, r);
    case '*': return verify_rational(ap * bp, aq * bq, r);
    default: return verify_rational(ap * bq, aq * bp, r);
    }
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
static inline bool verify_sum(VerifyExpression *e, VerifyRational *value);

static inline bool verify_factor(VerifyExpression *e, VerifyRational *value) {
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
        *value = (VerifyRational){number, 1};
    }
    if (negative) value->p = -value->p;
    return true;
}

static inline bool verify_product(VerifyExpression *e, VerifyRational *value) {
    size_t width;
    char op;
    if (!verify_factor(e, value)) return false;
    while ((op = verify_operator(e, &width)) == '*' || op == '/') {
        VerifyRational right;
        e->at += width;
        if (!verify_factor(e, &right) || !verify_operate(*value, op, right, value)) return false;
    }
    return true;
}

static inline bool verify_sum(VerifyExpression *e, VerifyRational *value) {
    size_t width;
    char op;
    if (!verify_product(e, value)) return false;
    while ((op = verify_operator(e, &width)) == '+' || op == '-') {
        VerifyRational right;
        e->at += width;
        if (!verify_product(e, &right) || !verify_operate(*value, op, right, value)) return false;
    }
    return true;
}

/* Parses all of `text` as an expression, optionally followed by "= value"; e->operands are those of the expression. */
static inline bool verify_expression(VerifySpan text, VerifyExpression *e, VerifyRational *value) {
    size_t width;
    *e = (VerifyExpression){.text = text};
    if (!verify_sum(e, value)) return false;
    if (verify_operator(e, &width) == '=') {
        VerifyExpression stated = {.text = text, .at = e->at + width};
        VerifyRational said;
        if (!verify_sum(&stated, &said) || said.p != value->p || said.q != value->q) return false;
        verify_operator(&stated, &width);
        return stated.at == text.n;
    }
    return e->at == text.n;
}

/* Parses the last line of a completion's final answer as an expression. */
static inline bool verify_final_expression(const char *completion, VerifyExpression *e, VerifyRational *value) {
    VerifyMark mark;
    return verify_expression(verify_last_line(verify_final(completion, &mark)), e, value);
}

/* Writes the canonical text of r to out[VERIFY_NUMBER_SIZE]; false if it has more than 38 digits. */
static inline bool verify_print_rational(VerifyRational r, char *out) {
    return verify_print_fraction(r.p < 0, (unsigned __int128)(r.p < 0 ? -r.p : r.p), (unsigned __int128)r.q, out);
}

/* Right if the expression uses only the given numbers and its value is the target. */
static inline float verify_countdown(const RewardInput *in, const json_t *fields) {
    const json_t *numbers = json_object_get(fields, "numbers"), *target = json_object_get(fields, "target");
    if (!numbers) numbers = json_object_get(fields, "nums");
    const size_t given = json_array_size(numbers);
    char wanted[VERIFY_NUMBER_SIZE], reached[VERIFY_NUMBER_SIZE];
    bool fraction, taken[VERIFY_OPERANDS] = {false};
    if (!given || given > VERIFY_OPERANDS) return NAN;
    if (json_is_integer(target)) snprintf(wanted, sizeof wanted, "%lld", (long long)json_integer_value(target));
    else if (!verify_final_number(in->answer, false, false, wanted, &fraction)) return NAN;
    VerifyExpression e;
    VerifyRational value;
    if (!verify_final_expression(in->completion, &e, &value)) return 0;
    for (int i = 0; i < e.count; i++) {
        size_t k = 0;
        while (k < given && (taken[k] || json_integer_value(json_array_get(numbers, k)) != e.operands[i] ||
                             !json_is_integer(json_array_get(numbers, k))))
            k++;
        if (k == given) return 0;
        taken[k] = true;
    }
    return verify_print_rational(value, reached) && !strcmp(wanted, reached) ? 1 : 0;
}

#endif
