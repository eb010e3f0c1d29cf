/* rows.h - rows that generate and evaluate write of completions whose turns call tools.
 *
 *     run(0, "./generate -c $T/sft.bin -i $T/tasks.shard --tools calculator ...");
 *     assert_true(rows_unread(out) > 0);
 */
#ifndef TESTS_ROWS_H
#define TESTS_ROWS_H

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* The number of values of a key in a list of objects that are this text. */
static inline size_t rows_count(const json_t *list, const char *key, const char *text) {
    size_t i, n = 0;
    const json_t *item;
    json_array_foreach(list, i, item) {
        const char *value = json_string_value(json_object_get(item, key));
        n += value && !strcmp(value, text);
    }
    return n;
}

/* The results that the model has not observed, in all rows of a text. Fails unless each row has as many results in its messages
 * as runs of observed tokens and unread results; a turn has one call. */
static inline size_t rows_unread(const char *rows) {
    size_t all = 0;
    for (const char *at = rows, *end; (end = strchr(at, '\n')); at = end + 1) {
        json_t *row = json_loadb(at, (size_t)(end - at), JSON_ALLOW_NUL, NULL);
        const json_t *messages = json_object_get(row, "messages"), *message;
        size_t i, results = rows_count(messages, "role", "tool");
        json_array_foreach(messages, i, message) results +=
            rows_count(json_object_get(message, "content"), "type", "python_output");
        if (!json_is_integer(json_object_get(row, "unread"))) fail_msg("a row has no unread: %.300s", at);
        const size_t unread = (size_t)json_integer_value(json_object_get(row, "unread"));
        assert_int_equal(results, json_array_size(json_object_get(row, "drawn")) / 2 + unread);
        all += unread;
        json_decref(row);
    }
    return all;
}

#endif
