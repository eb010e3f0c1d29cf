/* test_jinja.c - the interpreter of chat templates: expressions, and the published templates of many models over 200
 * conversations, against Jinja2 as transformers configures it (dev/golden/golden_template.py); origins and spans; limits;
 * errors; damaged templates. LLMC_TEMPLATES=FILE compares with the cases of that file instead. */
#include "../llmc/base/error.h"       /* Error, die, xstrndup */
#include "../llmc/base/io.h"          /* XXH3_64bits */
#include "../llmc/base/jsonl.h"       /* Jsonl, jsonl_close, jsonl_next, jsonl_open */
#include "../llmc/base/text.h"        /* text_append, TextBuffer, text_clear, text_format, ... */
#include "../llmc/text/jinja.h"       /* jinja_free, jinja_parse, jinja_render, jinja_text_free */
#include "../llmc/text/jinja_chat.h"  /* JinjaTurns, jinja_chat_date, jinja_chat_prepare, jinja_turns_generated */
#include "../llmc/text/jinja_parse.h" /* Jinja */
#include "../llmc/text/jinja_value.h" /* JinjaText */
#include "files.h"                    /* files_setup, files_teardown */

static struct tm today(void) {
    Error e;
    struct tm date;
    assert_true(jinja_chat_date("2026-03-05", &date, &e));
    return date;
}

/* ---- golden values --------------------------------------------------------------------------------------------- */

enum { CONVERSATIONS = 200, BLOCK = 10 };

static json_t *values, *snippets, *cases[CONVERSATIONS], *templates;

static int setup(void **state) {
    Error e;
    Jsonl j;
    json_t *row;
    int more, count = 0;
    const char *path = getenv("LLMC_TEMPLATES");
    templates = json_array();
    if (files_setup(state) || !jsonl_open(&j, path ? path : "tests/golden/template.jsonl.zst", false, &e))
        die("%s", e.text);
    while ((more = jsonl_next(&j, &row, &e)) > 0) {
        if (!values) {
            values = json_incref(json_object_get(row, "values"));
            snippets = json_incref(json_object_get(row, "snippets"));
        } else if (count < CONVERSATIONS) cases[count++] = json_incref(row);
        else json_array_append(templates, row);
    }
    if (more < 0) die("%s", e.text);
    jsonl_close(&j);
    return 0;
}

static int teardown(void **state) {
    for (int i = 0; i < CONVERSATIONS; i++) json_decref(cases[i]);
    json_decref(values);
    json_decref(snippets);
    json_decref(templates);
    return files_teardown(state);
}

/* Renders text with `values` as conversation. Returns the result or NULL with *e. The caller frees it. */
static char *render(const char *text, size_t n, JinjaText *out, Error *e) {
    Jinja j;
    const struct tm date = today();
    json_t *none = json_object();
    bool ok = jinja_parse(&j, text, n, e);
    if (ok) {
        ok = jinja_render(&j, values, none, &date, out, e);
        jinja_free(&j);
    }
    json_decref(none);
    return ok ? xstrndup(out->text ? out->text : "", out->length) : NULL;
}

static void require_message(const Error *e) {
    assert_true(!strncmp(e->text, "chat template: ", 15) && strlen(e->text) > 25);
    assert_null(strchr(e->text, '\n'));
}

/* What transformers' sandbox forbids and llama.cpp allows. */
static bool allowed(const char *text) { return strstr(text, "append(") || strstr(text, "pop("); }

static void test_snippets(void **state) {
    (void)state;
    size_t i, wrong = 0, refused = 0;
    json_t *snippet;
    json_array_foreach(snippets, i, snippet) {
        Error e = {""};
        JinjaText out;
        const char *text = json_string_value(json_array_get(snippet, 0));
        const json_t *want = json_array_get(snippet, 1);
        char *got = render(text, json_string_length(json_array_get(snippet, 0)), &out, &e);
        if (got) jinja_text_free(&out);
        else require_message(&e);
        const bool equal =
            got && json_is_string(want) ? !strcmp(got, json_string_value(want)) : !got && json_is_null(want);
        const bool refusal = !got && (strstr(e.text, "not supported") || strstr(e.text, "is too large"));
        if (!equal && refusal) refused++;
        else if (!equal && !allowed(text)) {
            printf("%s\n  got  %s\n  want %s\n", text, got ? got : e.text,
                   json_is_null(want) ? "an error" : json_string_value(want));
            wrong++;
        }
        free(got);
    }
    assert_true(i > 500);
    assert_int_equal(wrong, 0);
    if (!getenv("LLMC_TEMPLATES")) assert_int_equal(refused, 17); /* what the interpreter leaves out on purpose */
}

/* Appends the record of a rendering in the format of golden_template.py. */
static void record(const Jinja *j, const json_t *given, TextBuffer *out) {
    Error e = {""};
    JinjaText text;
    const struct tm date = today();
    json_t *conversation = json_copy(json_object_get(given, "conversation"));
    json_object_set_new(conversation, "messages", jinja_chat_prepare(json_object_get(conversation, "messages")));
    const bool ok = jinja_render(j, conversation, json_object_get(given, "variables"), &date, &text, &e);
    json_decref(conversation);
    if (!ok) {
        const char *raised = strstr(e.text, "refuses the conversation: ");
        require_message(&e);
        if (raised) text_format(out, "X%s", raised + strlen("refuses the conversation: "));
        else text_string(out, "E");
        text_append(out, "", 1);
        return;
    }
    text_string(out, "R");
    text_append(out, text.text ? text.text : "", text.length);
    text_append(out, "", 1);
    if (j->generation) {
        JinjaTurns turns = {.text = text};
        jinja_turns_generated(&turns);
        for (int i = 0; i < turns.count; i++) text_format(out, "%zu %zu ", turns.spans[i].begin, turns.spans[i].end);
        text_append(out, "", 1);
        free(turns.spans);
    }
    jinja_text_free(&text);
}

/* Returns whether the record equals the given one; prints the place where it does not. */
static bool same_record(const char *name, int number, const TextBuffer *got, const json_t *want) {
    const char *text = json_string_value(want);
    const size_t n = json_string_length(want);
    size_t at = 0;
    if (got->length == n && !memcmp(got->text, text, n)) return true;
    while (at < n && at < got->length && got->text[at] == text[at]) at++;
    const size_t from = at > 40 ? at - 40 : 0;
    printf("%s, conversation %d, byte %zu\n  got  %.120s\n  want %.120s\n", name, number, at, got->text + from,
           text + from);
    return false;
}

static void test_published(void **state) {
    (void)state;
    size_t i;
    json_t *entry;
    int wrong = 0, texts = 0;
    json_array_foreach(templates, i, entry) {
        Error e;
        Jinja j;
        TextBuffer all = {0}, one = {0};
        const char *name = json_string_value(json_object_get(entry, "name"));
        const json_t *source = json_object_get(entry, "template"), *full = json_object_get(entry, "full");
        if (!jinja_parse(&j, json_string_value(source), json_string_length(source), &e)) {
            printf("%s: %s\n", name, e.text);
            wrong += !strstr(e.text, "from_json"); /* transformers does not have it either */
            continue;
        }
        for (int k = 0; k < CONVERSATIONS; k++) {
            text_clear(&one);
            record(&j, cases[k], &one);
            text_append(&all, one.text, one.length);
            const json_t *want = json_array_get(full, (size_t)k);
            texts += want != NULL;
            if (want && !allowed(json_string_value(source))) wrong += !same_record(name, k, &one, want);
            if (k % BLOCK != BLOCK - 1) continue;
            char hash[20];
            snprintf(hash, sizeof hash, "%016llx", (unsigned long long)XXH3_64bits(all.text, all.length));
            const char *golden = json_string_value(json_array_get(json_object_get(entry, "hashes"), (size_t)k / BLOCK));
            if (strcmp(hash, golden) && !want) {
                printf("%s: conversations %d to %d differ\n", name, k - BLOCK + 1, k);
                wrong++;
            }
            text_clear(&all);
        }
        text_free(&all);
        text_free(&one);
        jinja_free(&j);
    }
    assert_true(i > 60);
    assert_true(texts >= 60);
    assert_int_equal(wrong, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snippets),
        cmocka_unit_test(test_published),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
