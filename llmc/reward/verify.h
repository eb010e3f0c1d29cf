/* verify.h - verifiers for verifiable rewards: check a completion against a record's answer.
 *
 * Owns the table of tasks. A score is 1 (right), 0 (wrong; f1: between them) or NaN (cannot be scored, because the
 * record lacks what the check needs or a pattern hit its match limit).
 *
 *   task                    check                      answer                     fields used      header
 *   add sub mul arithmetic  number                     the result                 style            verify_number.h
 *   bigmul guess            number                     the result                 -                verify_number.h
 *   numeric                 number                     number, or GSM8K solution  style            verify_number.h
 *   word gsm8k              number after `####` only   number, or GSM8K solution  -                verify_number.h
 *   countdown               expression                 the target                 numbers, target  verify_expression.h
 *   sort                    list, by value             the sorted list            -                verify_list.h
 *   brackets                closers                    the missing closers        open             verify_brackets.h
 *   math                    number, or canonical text  a MATH-style answer        -                verify_math.h
 *   em f1                   SQuAD's measures           the text                   answers          verify_text.h
 *   choice                  letter                     the letter                 -                verify_text.h
 *   exact lookup            text, trimmed              the text                   -
 *   regex                   PCRE2 search               the pattern                pattern          verify_pattern.h
 *   code                    a program that passes      -                          tests, test ...  code_tests.h
 *   (none)                  number if the answer is a number, else exact or math
 *
 * Checks of a number also use the field `tolerance`, and countdown the field `use_all`. verify_fields.h has the values that
 * each field may have.
 *
 * Each header has the grammar of what it accepts, and verify_answer.h has the rule for the part of a completion that is
 * its final answer. `exact` accepts both that part and the whole completion.
 *
 * Limits: completions are not trusted. For any text, nothing here allocates per nesting level, recurses deeper than 100
 * levels, or takes much more than linear time.
 *
 *     const RewardInput in = {.completion = "7+8=15\n#### 15", .task = "word", .answer = "15"};
 *     float right;
 *     if (!rewards_verify(&in, &right)) printf("there is no task '%s'\n", in.task);        // right = 1
 */
#ifndef LLMC_REWARD_VERIFY_H
#define LLMC_REWARD_VERIFY_H

#include "../base/error.h"     /* Error, error_set */
#include "../base/text.h"      /* text_append, TextBuffer, text_free */
#include "code_tests.h"        /* CODE_NO_TEST, CODE_UNREAD, code_form, code_tests_check, ... */
#include "verify_answer.h"     /* RewardInput, VerifySpan, verify_fields, verify_completion, ... */
#include "verify_brackets.h"   /* verify_brackets, verify_final_closers */
#include "verify_expression.h" /* verify_countdown, VerifyExpression, verify_final_expression */
#include "verify_fields.h"     /* verify_fields_brackets, verify_fields_countdown, verify_fields_number, ... */
#include "verify_list.h"       /* verify_final_list, verify_sort */
#include "verify_math.h"       /* verify_math, verify_math_canonical, verify_math_final */
#include "verify_number.h"     /* verify_is_number, verify_numeric, verify_styled_text */
#include "verify_pattern.h"    /* verify_regex */
#include "verify_rational.h"   /* rational_available, VERIFY_NUMBER_SIZE, rational_clear, rational_init, ... */
#include "verify_text.h"       /* verify_choice, verify_choice_of, verify_em, verify_f1, ... */

#define VERIFY_TASKS                                                                                                                          \
    "add, sub, mul, arithmetic, bigmul, guess, lookup, numeric, math, word, gsm8k, countdown, sort, brackets, exact, em, f1, choice, regex, " \
    "code or empty"

typedef enum {
    VERIFY_EXACT,
    VERIFY_NUMERIC,
    VERIFY_HASH,
    VERIFY_COUNTDOWN,
    VERIFY_COUNTDOWN_ALL,
    VERIFY_SORT,
    VERIFY_BRACKETS,
    VERIFY_REGEX,
    VERIFY_MATH,
    VERIFY_EM,
    VERIFY_F1,
    VERIFY_CHOICE,
    VERIFY_CODE,
    VERIFY_AUTO
} VerifyKind;

/* The check for a task name, or -1 if the name is unknown. */
static inline int verify_kind(const char *task) {
    static const struct {
        const char *name;
        VerifyKind kind;
    } kinds[] = {{"", VERIFY_AUTO},         {"add", VERIFY_NUMERIC},        {"sub", VERIFY_NUMERIC},
                 {"mul", VERIFY_NUMERIC},   {"arithmetic", VERIFY_NUMERIC}, {"numeric", VERIFY_NUMERIC},
                 {"word", VERIFY_HASH},     {"gsm8k", VERIFY_HASH},         {"countdown", VERIFY_COUNTDOWN},
                 {"sort", VERIFY_SORT},     {"brackets", VERIFY_BRACKETS},  {"exact", VERIFY_EXACT},
                 {"regex", VERIFY_REGEX},   {"math", VERIFY_MATH},          {"em", VERIFY_EM},
                 {"f1", VERIFY_F1},         {"choice", VERIFY_CHOICE},      {"bigmul", VERIFY_NUMERIC},
                 {"guess", VERIFY_NUMERIC}, {"lookup", VERIFY_EXACT},       {"code", VERIFY_CODE}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(task ? task : "", kinds[i].name)) return (int)kinds[i].kind;
    return -1;
}

static inline float verify_exact(const RewardInput *in) {
    VerifyMark mark;
    const VerifySpan all = verify_completion(in), answer = verify_trim(verify_span(in->answer)),
                     stated = verify_final(all, &mark);
    if (!answer.n) return NAN;
    return verify_same(verify_trim(all), answer) || verify_same(stated, answer) ? 1 : 0;
}

/* The check that an answer makes of a kind: that of a number if math or the empty task has one. */
static inline VerifyKind verify_resolve(VerifyKind kind, const char *answer) {
    const bool number = (kind == VERIFY_AUTO || kind == VERIFY_MATH) && verify_is_number(answer);
    return number ? VERIFY_NUMERIC : kind;
}

/* Whether a kind that verify_resolve() returned can use the fields; *field and the error as in verify_fields.h. */
static inline bool verify_kind_fields(const json_t *fields, VerifyKind kind, const char **field, Error *e) {
    switch (kind) {
    case VERIFY_NUMERIC:
    case VERIFY_HASH: return verify_fields_number(fields, field, e);
    case VERIFY_COUNTDOWN:
    case VERIFY_COUNTDOWN_ALL: return verify_fields_countdown(fields, field, e);
    case VERIFY_BRACKETS: return verify_fields_brackets(fields, field, e);
    case VERIFY_REGEX: return verify_fields_regex(fields, field, e);
    case VERIFY_EM:
    case VERIFY_F1: return verify_fields_overlap(fields, field, e);
    case VERIFY_CODE: return code_tests_check(fields, field, e);
    default: return true;
    }
}

/* Whether the check of the record's task can use the record's fields; *field and the error as in verify_fields.h. True
 * for a task that has no verifier. */
static inline bool rewards_check_fields(const RewardInput *in, const char **field, Error *e) {
    const int kind = verify_kind(in->task);
    if (kind < 0) return true;
    json_t *fields = verify_fields(in);
    const bool good = verify_kind_fields(fields, verify_resolve((VerifyKind)kind, in->answer), field, e);
    json_decref(fields);
    return good;
}

enum { VERIFY_UNREAD = 2 + CODE_UNREAD };

/* Sets name[] to the record's fields that only verifiers read, and that of its task does not: `tolerance` without a
 * number, `use_all` without countdown, and those of code_unread_fields(). Returns their number. */
static inline int rewards_unread_fields(const RewardInput *in, const char *name[VERIFY_UNREAD]) {
    const int kind = verify_kind(in->task);
    if (kind < 0) return 0;
    const VerifyKind check = verify_resolve((VerifyKind)kind, in->answer);
    json_t *fields = verify_fields(in);
    int count = check == VERIFY_CODE ? code_unread_fields(fields, name) : 0;
    if (verify_present(fields, "tolerance") && check != VERIFY_NUMERIC && check != VERIFY_HASH)
        name[count++] = "tolerance";
    if (verify_present(fields, "use_all") && check != VERIFY_COUNTDOWN) name[count++] = "use_all";
    json_decref(fields);
    return count;
}

/* What is known of a program without running it: an empty completion is wrong. Others are NaN here, and scored by
 * code_judge.h; so are those of a record without tests. */
static inline float verify_code(const RewardInput *in, const json_t *fields) {
    return code_form(fields) != CODE_NO_TEST && !verify_completion(in).n ? 0 : NAN;
}

/* The score (1, 0 or NaN) of one kind of check, independent of the record's task. */
static inline float verify_score(const RewardInput *in, VerifyKind kind) {
    json_t *fields = verify_fields(in);
    const char *field;
    float score = NAN;
    kind = verify_resolve(kind, in->answer);
    if (!verify_kind_fields(fields, kind, &field, NULL)) {
        json_decref(fields);
        return NAN;
    }
    switch (kind) {
    case VERIFY_NUMERIC: score = verify_numeric(in, fields, false); break;
    case VERIFY_HASH: score = verify_numeric(in, fields, true); break;
    case VERIFY_COUNTDOWN: score = verify_countdown(in, fields, false); break;
    case VERIFY_COUNTDOWN_ALL: score = verify_countdown(in, fields, true); break;
    case VERIFY_SORT: score = verify_sort(in); break;
    case VERIFY_BRACKETS: score = verify_brackets(in, fields); break;
    case VERIFY_REGEX: score = verify_regex(in, fields); break;
    case VERIFY_MATH: score = verify_math(in); break;
    case VERIFY_EM: score = verify_em(in, fields); break;
    case VERIFY_F1: score = verify_f1(in, fields); break;
    case VERIFY_CHOICE: score = verify_choice(in); break;
    case VERIFY_CODE: score = verify_code(in, fields); break;
    case VERIFY_AUTO:
        score = verify_exact(in);
        if (score == 0) score = verify_math(in);
        break;
    default: score = verify_exact(in);
    }
    json_decref(fields);
    return score;
}

/* Scores by the check of the record's task: *score is 1, 0 or NaN. False if the task's name is unknown. */
static inline bool rewards_verify(const RewardInput *in, float *score) {
    const int kind = verify_kind(in->task);
    if (kind < 0) return false;
    *score = verify_score(in, (VerifyKind)kind);
    return true;
}

/* Whether the check of the record's task can score its completions: false, with the reason, if the task has no verifier,
 * the record's answer and fields are not what the task needs, or numbers cannot be read. The completion is not read. */
static inline bool rewards_check_answer(const RewardInput *in, Error *e) {
    RewardInput empty = *in;
    float score;
    empty.completion = "";
    empty.completion_length = 0;
    const char *task = in->task ? in->task : "", *answer = in->answer ? in->answer : "";
    if (!rational_available(e)) return false;
    if (!rewards_verify(&empty, &score))
        return error_set(e, "task '%.80s' has no verifier, must be " VERIFY_TASKS, task);
    if (!isnan(score)) return true;
    Error why;
    const char *field;
    if (!rewards_check_fields(in, &field, &why)) return error_set(e, "field '%s' %s", field, why.text);
    return error_set(e, "task '%.80s' cannot check the answer '%.80s'", task, answer);
}

/* Writes the value of the completion's final expression. */
static inline bool verify_value_of_expression(VerifySpan completion, char *answer, size_t size) {
    char number[VERIFY_NUMBER_SIZE];
    VerifyExpression e;
    mpq_t value;
    if (!rational_available(NULL)) return false;
    rational_init(value);
    const bool found = verify_final_expression(completion, &e, value) && rational_print(value, number);
    rational_clear(value);
    return found && verify_copy(verify_span(number), answer, size);
}

/* Writes the completion's final answer in canonical form to answer[size]: completions with the same answer give the
 * same text (a number, a list, the value of an expression, closers; otherwise the trimmed text). Respects the record's
 * style. False if there is no final answer or it does not fit. */
static inline bool rewards_answer(const RewardInput *in, char *answer, size_t size) {
    VerifyMark mark;
    const int kind = verify_kind(in->task);
    const VerifySpan completion = verify_completion(in);
    if (kind == VERIFY_SORT) return verify_final_list(completion, answer, size);
    if (kind == VERIFY_BRACKETS) return verify_final_closers(completion, answer, size);
    if (kind == VERIFY_COUNTDOWN) return verify_value_of_expression(completion, answer, size);
    const bool number = kind == VERIFY_NUMERIC || kind == VERIFY_HASH;
    if (number || ((kind == VERIFY_AUTO || kind == VERIFY_MATH) && verify_is_number(in->answer))) {
        char text[VERIFY_NUMBER_SIZE];
        json_t *fields = verify_fields(in);
        const bool found = verify_styled_text(completion, kind == VERIFY_HASH, fields, text);
        json_decref(fields);
        if (found || number) return found && verify_copy(verify_span(text), answer, size);
    }
    TextBuffer text = {0};
    const VerifySpan t = verify_final(completion, &mark);
    const char letter = kind == VERIFY_CHOICE ? verify_choice_of(completion) : 0;
    if (kind == VERIFY_CHOICE) text_append(&text, &letter, letter != 0);
    else if (kind == VERIFY_EM || kind == VERIFY_F1) verify_words(t, &text);
    else if ((kind == VERIFY_AUTO || kind == VERIFY_MATH) && rational_available(NULL))
        verify_math_canonical(verify_math_final(completion), &text);
    else text_append(&text, t.s, t.n);
    const bool fits = text.length && verify_copy((VerifySpan){text.text, text.length}, answer, size);
    text_free(&text);
    return fits;
}

/* The same without a record, and therefore without a style: numbers are read as written. */
static inline bool reward_final_answer(const char *completion, const char *task, char *answer, size_t size) {
    const RewardInput in = {.completion = completion, .task = task};
    return rewards_answer(&in, answer, size);
}

#endif
