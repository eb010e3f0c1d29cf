/* ask.h - prompts made of a row by a template, with examples of other rows before it.
 *
 * A template is a text in which {field} stands for a field of the row ({answer}, or a path such as {a.b.0}) and {{ for a
 * brace. Its part from {shot} to {/shot} is written once for each example, with the example's fields:
 *
 *     {shot}Question: {prompt}
 *     Answer: {completion}
 *
 *     {/shot}Question: {prompt}
 *     Answer:
 *
 * The last newline of the file is left out. The examples of row i are a function of (seed, i): distinct rows of a file in
 * random order, none of which has the row's own prompt. An example of use:
 *
 *     Ask a = {0};
 *     if (!ask_open(&a, "hint.txt", "shots.jsonl", 3, seed, &e)) die("%s", e.text);
 *     if (!ask_text(&a, &jsonl, row, i, &text, &e)) die("%s", e.text);
 *     if (!ask_again(&jsonl, row, text.text, text.length, &e)) die("%s", e.text);      // the row's conversation goes on
 *     ask_close(&a);
 */
#ifndef DATA_ASK_H
#define DATA_ASK_H

#include "../llmc/base/error.h"     /* Error, error_set, xstrndup, xcalloc, ... */
#include "../llmc/base/io.h"        /* file_slurp */
#include "../llmc/base/json_text.h" /* json_utf8 */
#include "../llmc/base/jsonl.h"     /* Jsonl, jsonl_error, jsonl_close, jsonl_next, ... */
#include "../llmc/base/random.h"    /* RANDOM_SHOTS, Random, random_below, random_start */
#include "../llmc/base/text.h"      /* TextBuffer, text_clear, utf8_valid */
#include "row_fields.h"             /* row_peek, FIELD_MESSAGES, FIELD_PROMPT, row_fill, ... */

enum { ASK_TEMPLATE_MAX = 1 << 20 }; /* bytes */

typedef struct Ask {
    char *before, *shot, *after; /* the template's parts; without examples only `after`, the others are NULL */
    json_t *shots;               /* the rows that examples are drawn from, or NULL */
    int64_t *line;               /* of each of these */
    char *name;                  /* of their file */
    int64_t count;               /* examples of a prompt */
    uint64_t seed;
} Ask;

static inline void ask_close(Ask *a) {
    free(a->before), free(a->shot), free(a->after), free(a->line), free(a->name);
    json_decref(a->shots);
    *a = (Ask){0};
}

/* Divides the template at {shot} and {/shot}. */
static inline bool ask_divide(Ask *a, const char *text, const char *path, Error *e) {
    const char *begin = strstr(text, "{shot}"), *end = strstr(text, "{/shot}");
    if (!begin != !end || (begin && end < begin))
        return error_set(e, "%s: {shot} and {/shot} do not surround a part of the template", path);
    if (begin && (strstr(begin + 1, "{shot}") || strstr(end + 1, "{/shot}")))
        return error_set(e, "%s: a template has one part {shot}...{/shot}", path);
    if (begin) {
        a->before = xstrndup(text, (size_t)(begin - text));
        a->shot = xstrndup(begin + strlen("{shot}"), (size_t)(end - begin) - strlen("{shot}"));
        text = end + strlen("{/shot}");
    }
    a->after = xstrndup(text, strlen(text));
    return true;
}

/* Checks the braces of the template's parts: one of them must have a {field}. */
static inline bool ask_check(const Ask *a, const char *path, Error *e) {
    const char *const parts[] = {a->before, a->shot, a->after};
    bool any = false;
    for (int i = 0; i < 3; i++) {
        Error inner;
        bool fields = false;
        if (!parts[i]) continue;
        if (!row_pattern_check(parts[i], &fields, &inner)) return error_set(e, "%s: %s", path, inner.text);
        any = any || fields;
    }
    return any || error_set(e, "%s: the template has no {field}", path);
}

/* Reads the rows that examples are drawn from. */
static inline bool ask_read_shots(Ask *a, const char *path, Error *e) {
    Jsonl j;
    json_t *row;
    int more;
    a->shots = json_array();
    if (!jsonl_open(&j, path, false, e)) return false;
    a->name = xstrndup(j.name, strlen(j.name));
    while ((more = jsonl_next(&j, &row, e)) > 0) {
        json_array_append(a->shots, row);
        a->line = (int64_t *)xrealloc(a->line, json_array_size(a->shots), sizeof *a->line);
        a->line[json_array_size(a->shots) - 1] = j.line;
    }
    jsonl_close(&j);
    if (!more && (int64_t)json_array_size(a->shots) < a->count)
        return error_set(e, "%s: has %zu rows, --num-shots is %lld", a->name, json_array_size(a->shots),
                         (long long)a->count);
    return !more;
}

/* Opens the template in the file `path`. shots: a file of rows for `count` examples in each prompt; NULL: no examples. */
static inline bool ask_open(Ask *a, const char *path, const char *shots, int64_t count, uint64_t seed, Error *e) {
    size_t n;
    *a = (Ask){.count = shots ? count : 0, .seed = seed};
    char *text = file_slurp(path, ASK_TEMPLATE_MAX, &n, e);
    if (!text) return false;
    if (n && text[n - 1] == '\n') text[--n] = 0;
    bool ok = true;
    if (strlen(text) < n || utf8_valid(text, n) < n)
        ok = error_set(e, "%s: a template is a text in UTF-8 without NUL characters", path);
    ok = ok && ask_divide(a, text, path, e) && ask_check(a, path, e);
    free(text);
    if (ok && shots && !a->shot)
        ok = error_set(e, "%s: the template has no part {shot}...{/shot} for the examples of --shots", path);
    if (ok && !shots && a->shot)
        ok = error_set(e, "%s: the template has a part {shot}...{/shot}; give its examples with --shots", path);
    if (ok && shots) ok = ask_read_shots(a, shots, e);
    if (!ok) ask_close(a);
    return ok;
}

/* Whether the example has the same prompt as the row. */
static inline bool ask_same(json_t *example, json_t *row) {
    const RowFields f = {0};
    for (int i = 0; i < 2; i++) {
        const json_t *x = row_peek(&f, example, i ? FIELD_PROMPT : FIELD_MESSAGES),
                     *y = row_peek(&f, row, i ? FIELD_PROMPT : FIELD_MESSAGES);
        if (x || y) return x && y && json_equal(x, y);
    }
    return json_equal(example, row);
}

/* Appends the examples of prompt i: a random order of the rows is followed until there are enough. */
static inline bool ask_examples(const Ask *a, const Jsonl *j, json_t *row, uint64_t i, TextBuffer *out, Error *e) {
    const size_t rows = json_array_size(a->shots);
    Random r = random_start(a->seed, RANDOM_SHOTS + i);
    size_t *order = (size_t *)xcalloc(rows, sizeof *order);
    int64_t left = a->count;
    bool ok = true;
    for (size_t k = 0; k < rows; k++) order[k] = k;
    for (size_t k = 0; k < rows && left && ok; k++) {
        const size_t other = k + (size_t)random_below(&r, rows - k), drawn = order[other];
        order[other] = order[k];
        json_t *example = json_array_get(a->shots, drawn);
        if (ask_same(example, row)) continue;
        const Jsonl at = {.name = a->name, .line = a->line[drawn]};
        ok = row_fill(NULL, &at, example, a->shot, "shots", out, e);
        left--;
    }
    free(order);
    if (ok && left)
        return jsonl_error(j, NULL, e, "only %lld rows of %s have another prompt, --num-shots is %lld",
                           (long long)(a->count - left), a->name, (long long)a->count);
    return ok;
}

/* Sets *out to the prompt of a row. j: names the row in messages; i: its number, from 0. */
static inline bool ask_text(const Ask *a, const Jsonl *j, json_t *row, uint64_t i, TextBuffer *out, Error *e) {
    text_clear(out);
    if (a->before && !row_fill(NULL, j, row, a->before, "prompt-template", out, e)) return false;
    if (a->shots && !ask_examples(a, j, row, i, out, e)) return false;
    return row_fill(NULL, j, row, a->after, "prompt-template", out, e);
}

/* ---- asking again ---------------------------------------------------------------------------------------------- */

/* Appends a message, or each of a list, to a conversation. */
static inline bool ask_append(const Jsonl *j, json_t *list, const json_t *value, const char *role, Error *e) {
    size_t i;
    json_t *item;
    if (json_is_string(value)) {
        json_array_append_new(list, json_pack("{s:s,s:O}", "role", role, "content", value));
        return true;
    }
    if (json_is_object(value)) {
        if (!json_is_string(json_object_get(value, "role")))
            return jsonl_error(j, NULL, e, "has a message without a role, so its conversation cannot go on");
        json_array_append(list, (json_t *)value);
        return true;
    }
    json_array_foreach(value, i, item) if (!ask_append(j, list, item, role, e)) return false;
    return true;
}

/* Lets a row's conversation go on with a user's message: sets its field `messages` to its messages (or its prompt), its
 * completion and `text`, and removes the completion. Fails if nothing has been answered yet. */
static inline bool ask_again(const Jsonl *j, json_t *row, const char *text, size_t n, Error *e) {
    const RowFields f = {0};
    const json_t *messages = row_peek(&f, row, FIELD_MESSAGES), *said = row_peek(&f, row, FIELD_COMPLETION);
    json_t *list = json_array();
    char name[128] = "completion";
    bool ok = ask_append(j, list, messages ? messages : row_peek(&f, row, FIELD_PROMPT), "user", e);
    if (ok && said) ok = ask_append(j, list, said, "assistant", e);
    const json_t *last = json_array_get(list, json_array_size(list) - 1);
    const char *role = json_string_value(json_object_get(last, "role"));
    if (ok && (!role || strcmp(role, "assistant")))
        ok = jsonl_error(j, NULL, e, "has no completion to ask about again");
    if (ok) {
        json_array_append_new(list, json_pack("{s:s,s:o}", "role", "user", "content", json_utf8(text, n)));
        if (said && row_name(&f, row, FIELD_COMPLETION, name, sizeof name)) json_object_del(row, name);
        if (messages && row_name(&f, row, FIELD_MESSAGES, name, sizeof name)) json_object_del(row, name);
        json_object_set(row, "messages", list);
    }
    json_decref(list);
    return ok;
}

#endif
