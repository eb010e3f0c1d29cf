/* verify_fields.h - the fields of a record that a check reads, and what their values must be.
 *
 * There is a function for the fields of each kind of check. fields: an object, or NULL. It returns false if the check
 * cannot use the value of a field: *field is then the field's name, and the error says why: "is -1, must be a
 * number >= 0".
 *
 *   field         read by     must be
 *   tolerance     numbers     a number that is not negative
 *   style         numbers     direct, reversed or scratchpad
 *   numbers nums  countdown   a list of 1 to 64 integers; one of the two names
 *   target        countdown   an integer; it counts more than the answer
 *   use_all       countdown   true or false
 *   open          brackets    brackets of which some are not closed; it counts more than the answer
 *   pattern       regex       a text
 *   answers       em f1       a list of texts
 *   tests ...     code        see code_tests.h
 *
 * A field that is null is absent. A record with another value cannot be scored: the check is NaN, and make_shard refuses
 * the row.
 *
 *     json_t *fields = json_pack("{s:s}", "tolerance", "0.1");
 *     const char *field;
 *     if (!verify_fields_number(fields, &field, &e))
 *         printf("field '%s' %s\n", field, e.text);      // field 'tolerance' is "0.1", must be a number >= 0
 */
#ifndef LLMC_REWARD_VERIFY_FIELDS_H
#define LLMC_REWARD_VERIFY_FIELDS_H

#include "../base/error.h"     /* Error, error_set, xmalloc */
#include "verify_answer.h"     /* verify_present, VerifySpan, verify_field */
#include "verify_brackets.h"   /* verify_close */
#include "verify_expression.h" /* VERIFY_OPERANDS */

/* Sets the error "is VALUE, must be MUST", with the value as JSON, cut to 60 bytes. */
static inline bool verify_field_error(const json_t *value, const char *must, Error *e) {
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15));
    error_set(e, "is %.60s%s, must be %s", text ? text : "not JSON", text && strlen(text) > 60 ? "..." : "", must);
    free(text);
    return false;
}

static inline bool verify_fields_number(const json_t *fields, const char **field, Error *e) {
    const json_t *tolerance = verify_present(fields, "tolerance"), *style = verify_present(fields, "style");
    const char *name = json_string_value(style);
    *field = "tolerance";
    if (tolerance && !(json_is_number(tolerance) && json_number_value(tolerance) >= 0))
        return verify_field_error(tolerance, "a number >= 0", e);
    *field = "style";
    const bool known = name && (!strcmp(name, "direct") || !strcmp(name, "reversed") || !strcmp(name, "scratchpad"));
    return !style || known || verify_field_error(style, "direct, reversed or scratchpad", e);
}

/* A list of integers, or of texts. */
static inline bool verify_fields_list(const json_t *list, bool integers, size_t most, const char *must, Error *e) {
    bool good = json_is_array(list) && json_array_size(list) > 0 && json_array_size(list) <= most;
    for (size_t i = 0; good && i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        good = integers ? json_is_integer(item) : json_is_string(item);
    }
    return good || verify_field_error(list, must, e);
}

static inline bool verify_fields_countdown(const json_t *fields, const char **field, Error *e) {
    const json_t *numbers = verify_present(fields, "numbers"), *nums = verify_present(fields, "nums"),
                 *target = verify_present(fields, "target"), *all = verify_present(fields, "use_all");
    *field = numbers ? "numbers" : "nums";
    if (numbers && nums)
        return error_set(e, "is given together with the field 'nums', and only one is read: remove the other");
    if (!numbers) numbers = nums;
    if (numbers && !verify_fields_list(numbers, true, VERIFY_OPERANDS, "a list of 1 to 64 integers", e)) return false;
    *field = "use_all";
    if (all && !json_is_boolean(all)) return verify_field_error(all, "true or false", e);
    *field = "target";
    return !target || json_is_integer(target) || verify_field_error(target, "an integer", e);
}

static inline bool verify_fields_brackets(const json_t *fields, const char **field, Error *e) {
    const json_t *open = verify_present(fields, "open");
    const VerifySpan text = verify_field(open);
    *field = "open";
    if (!open) return true;
    char *closers = (char *)xmalloc(text.n + 1);
    const bool closed = text.s && verify_close(text, closers) && *closers;
    free(closers);
    return closed || verify_field_error(open, "brackets of which some are not closed", e);
}

static inline bool verify_fields_regex(const json_t *fields, const char **field, Error *e) {
    const json_t *pattern = verify_present(fields, *field = "pattern");
    return !pattern || json_is_string(pattern) || verify_field_error(pattern, "a text", e);
}

/* For em and f1. */
static inline bool verify_fields_overlap(const json_t *fields, const char **field, Error *e) {
    const json_t *answers = verify_present(fields, *field = "answers");
    return !answers || verify_fields_list(answers, false, SIZE_MAX, "a list of texts", e);
}

#endif
