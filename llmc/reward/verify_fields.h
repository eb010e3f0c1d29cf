/* verify_fields.h - the fields of a record that a check reads, and what their values must be.
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
 *
 * A field that is null is absent. A record with another value cannot be scored: the check is NaN, and make_shard refuses
 * the row.
 *
 *     json_t *fields = json_pack("{s:s}", "tolerance", "0.1");
 *     const char *field;
 *     if (!verify_fields_check(fields, VERIFY_FIELDS_NUMBER, &field, &e))
 *         printf("field '%s' %s\n", field, e.text);      // field 'tolerance' is "0.1", must be a number >= 0
 */
#ifndef LLMC_REWARD_VERIFY_FIELDS_H
#define LLMC_REWARD_VERIFY_FIELDS_H

#include "../base/error.h"     /* Error, error_set, xmalloc */
#include "verify_answer.h"     /* VerifySpan, verify_field */
#include "verify_brackets.h"   /* verify_close */
#include "verify_expression.h" /* VERIFY_OPERANDS */

/* The check whose fields are meant. */
typedef enum {
    VERIFY_FIELDS_NONE,
    VERIFY_FIELDS_NUMBER,
    VERIFY_FIELDS_COUNTDOWN,
    VERIFY_FIELDS_BRACKETS,
    VERIFY_FIELDS_REGEX,
    VERIFY_FIELDS_OVERLAP
} VerifyFields;

/* The value of a field, or NULL if it is absent or null. */
static inline const json_t *verify_present(const json_t *fields, const char *name) {
    const json_t *value = json_object_get(fields, name);
    return json_is_null(value) ? NULL : value;
}

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
    if (numbers && nums) return error_set(e, "stands beside the field 'nums', of which only one is read: remove one");
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

/* Whether the fields of a record that a check reads have values that it can use; if not, *field is the name of one that has
 * not, and the error says why: "is -1, must be a number >= 0". fields: an object, or NULL. */
static inline bool verify_fields_check(const json_t *fields, VerifyFields check, const char **field, Error *e) {
    const json_t *value;
    switch (check) {
    case VERIFY_FIELDS_NUMBER: return verify_fields_number(fields, field, e);
    case VERIFY_FIELDS_COUNTDOWN: return verify_fields_countdown(fields, field, e);
    case VERIFY_FIELDS_BRACKETS: return verify_fields_brackets(fields, field, e);
    case VERIFY_FIELDS_REGEX:
        value = verify_present(fields, *field = "pattern");
        return !value || json_is_string(value) || verify_field_error(value, "a text", e);
    case VERIFY_FIELDS_OVERLAP:
        value = verify_present(fields, *field = "answers");
        return !value || verify_fields_list(value, false, SIZE_MAX, "a list of texts", e);
    default: return true;
    }
}

#endif
