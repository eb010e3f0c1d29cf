/* test_jinja.c - the interpreter of chat templates: expressions, and the published templates of many models over 200
 * conversations, against Jinja2 as transformers configures it (dev/golden/golden_template.py); origins and spans;
 * limits; errors; damaged templates. LLMC_TEMPLATES=FILE compares with the cases of that file instead. */
#include "../llmc/base/error.h"       /* Error, xstrndup, die */
#include "../llmc/base/io.h"          /* XXH3_64bits */
#include "../llmc/base/jsonl.h"       /* Jsonl, jsonl_close, jsonl_next, jsonl_open */
#include "../llmc/base/text.h"        /* text_append, TextBuffer, text_free, text_string, ... */
#include "../llmc/text/jinja.h"       /* jinja_parse, jinja_free, jinja_render, jinja_text_free */
#include "../llmc/text/jinja_chat.h"  /* JinjaTurns, jinja_chat_date, jinja_chat_prepare, jinja_turns_generated */
#include "../llmc/text/jinja_parse.h" /* Jinja */
#include "../llmc/text/jinja_value.h" /* JinjaText, JINJA_MESSAGE */
#include "files.h"                    /* files_assert_error, files_setup, files_teardown */

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
        else if (!equal) {
            printf("%s\n  got  %s\n  want %s\n", text, got ? got : e.text,
                   json_is_null(want) ? "an error" : json_string_value(want));
            wrong++;
        }
        free(got);
    }
    assert_true(i > 500);
    assert_int_equal(wrong, 0);
    if (!getenv("LLMC_TEMPLATES")) assert_int_equal(refused, 18); /* what the interpreter leaves out on purpose */
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
            if (want) wrong += !same_record(name, k, &one, want);
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
    if (!getenv("LLMC_TEMPLATES")) assert_true(texts >= 60);
    assert_int_equal(wrong, 0);
}

/* ---- origins --------------------------------------------------------------------------------------------------- */

/* Renders `text` with {"x": "M&M", "l": ["a", "b"], "m": {"k": "v"}} from the conversation and t = "T" from the
 * variables. Returns the text in which bytes of the conversation are replaced by `_`. */
static void assert_marks(const char *text, const char *want) {
    Error e;
    Jinja j;
    JinjaText out;
    const struct tm date = today();
    json_t *conversation = json_pack("{s:s,s:[s,s],s:{s:s}}", "x", "M&M", "l", "a", "b", "m", "k", "v");
    json_t *variables = json_pack("{s:s}", "t", "T");
    if (!jinja_parse(&j, text, strlen(text), &e) || !jinja_render(&j, conversation, variables, &date, &out, &e))
        fail_msg("%s: %s", text, e.text);
    for (size_t i = 0; i < out.length; i++)
        if (out.marks[i] & JINJA_MESSAGE) out.text[i] = '_';
    char *shown = xstrndup(out.text ? out.text : "", out.length);
    assert_string_equal(shown, want);
    free(shown);
    jinja_text_free(&out);
    jinja_free(&j);
    json_decref(conversation);
    json_decref(variables);
}

static void test_origins(void **state) {
    (void)state;
    assert_marks("a{{ x }}b{{ t }}", "a___bT");
    assert_marks("{{ 'a' + x + 'b' }}{{ 'a' ~ x ~ t ~ 1 }}", "a___ba___T1");
    assert_marks("{{ ('<' + x + '>')[1:] }}{{ ('<' + x + '>')[::-1] }}{{ ('<' + x)[1] }}", "___>>___<_");
    assert_marks("{{ ('  ' ~ x ~ ' y ') | trim }}{{ (x ~ 'M').strip('M') }}{{ (x ~ 'ab').rstrip('b') }}", "___ y____a");
    assert_marks("{{ x | replace('&', 'and') }}{{ 'a-b' | replace('-', x) }}{{ x.replace('M', t, 1) }}",
                 "_and_a___bT__");
    assert_marks("{{ (x ~ '&q').split('&') | join('+') }}{{ l | join(x) }}{{ l | join('-') }}", "_+_+q______-_");
    assert_marks("{{ x | upper }}{{ 'a' | upper }}{{ (x ~ 'b') | capitalize }}{{ x | lower }}", "___A___b___");
    assert_marks("{{ x | title }}{{ ('a ' ~ x ~ ' b').title() }}", "___A ___ B");
    assert_marks("{{ m | tojson }}{{ 'a' | tojson }}{{ ['a' , x] | tojson }}", "___________a___a_________");
    assert_marks("{{ m }}{{ l }}{{ x | string }}", "_______________________");
    assert_marks("{{ x | default('d') }}{{ y | default('d') }}{{ y | default(x) }}{{ '{}-{}'.format(x, 1) }}",
                 "___d______-1");
    assert_marks("{% for k, v in m.items() %}{{ k }}:{{ v }}{% endfor %}{% for c in x ~ 'z' %}{{ c }}{% endfor %}",
                 "_:____z");
    assert_marks("{% set a %}<{{ x }}>{% endset %}{{ a }}{% filter upper %}q{{ x }}{% endfilter %}", "<___>Q___");
    assert_marks("{% macro f(a) %}[{{ a }}]{% endmacro %}{{ f(x) }}{{ f('x') | upper }}", "[___][X]");
    assert_marks("{{ (x | safe) + '<' }}{{ '&' + (t | safe) }}{{ ('a\n' ~ x) | indent(1) }}", "___&lt;&amp;Ta\n ___");
    assert_marks("{{ x | length }}{{ x == 'M&M' }}{{ x * 2 }}{{ [x, 'b'] | sort | first }}{{ [x, 'b'] | sort | last }}",
                 "3True______b___");
}

/* ---- errors and limits ----------------------------------------------------------------------------------------- */

static void assert_refused(const char *text, const char *part) {
    Error e = {""};
    JinjaText out;
    char *got = render(text, strlen(text), &out, &e);
    if (got) fail_msg("%s gives %s", text, got);
    require_message(&e);
    if (!strstr(e.text, part)) fail_msg("%s: '%s' does not hold '%s'", text, e.text, part);
}

/* A constant that is not understood is found before anything is rendered. */
static void assert_unparsed(const char *text, const char *part) {
    Error e = {""};
    Jinja j;
    assert_false(jinja_parse(&j, text, strlen(text), &e));
    require_message(&e);
    if (!strstr(e.text, part)) fail_msg("%s: '%s' does not hold '%s'", text, e.text, part);
}

static void test_errors(void **state) {
    (void)state;
    Error e;
    Jinja j;
    assert_unparsed("a\n{% if false %}\n{{ x | xmlattr }}{% endif %}", "line 3: the filter 'xmlattr' is not supported");
    assert_unparsed("{% if false %}{{ x is callable }}{% endif %}", "line 1: the test 'callable' is not supported");
    assert_unparsed("\n{{ x.swapcase() }}", "line 2: the method 'swapcase' is not supported");
    assert_unparsed("{{ cycler(1) }}", "the function 'cycler' is not supported");
    assert_unparsed("{% if false %}{{ f() }}{% endif %}", "the function 'f' is not supported");
    assert_unparsed("{{ l | select('callable') }}", "the test 'callable' is not supported");
    assert_unparsed("{{ l | selectattr('a', 'callable') }}", "the test 'callable' is not supported");
    assert_unparsed("{{ l | map('wordcount') }}", "the filter 'wordcount' is not supported");
    assert_unparsed("{% import 'x' as y %}", "the statement 'import' is not supported");
    assert_unparsed("{{ f(*x) }}", "arguments with * or ** are not supported");
    assert_unparsed("{% if a %}\n\n{{ b }}", "line 3: the template ends, expected endif");
    assert_unparsed("{{ 'a\n", "line 1: a string has no end");
    assert_unparsed("{{ '\\", "line 1: a string has no end");
    assert_unparsed("{{ a ? b }}", "unexpected character '?'");
    assert_unparsed("{{ (1] }}", "unexpected ']'");
    assert_unparsed("{% for a in b %}{% endif %}", "the statement 'endif' is not supported here");
    assert_false(jinja_parse(&j, "a\xFFz", 3, &e));
    files_assert_error(&e, "byte 2 is not UTF-8");
    assert_refused("a\n{{ x.y }}", "line 2: 'x' is undefined, its attribute 'y' was requested");
    assert_refused("{{ m.q.r }}", "'q' is undefined, its attribute 'r'");
    assert_refused("{{ n.upper() }}", "'upper' is undefined, it cannot be called");
    assert_refused("\n\n{% set q = s %}{{ q() }}", "line 3: 'q' is a string, it cannot be called");
    assert_refused("{{ strftime_now('%c') }}", "the directive '%c' is not supported");
    assert_refused("{{ m | tojson(ident=2) }}", "the argument 'ident' is not supported");
    assert_refused("{{ n + s }}", "'+' between an integer and a string is not supported");
    assert_refused("{{ 9223372036854775807 + 1 }}", "an integer exceeds 64 bits");
    assert_refused("{{ -9223372036854775807 - 2 }}", "an integer exceeds 64 bits");
    assert_refused("{{ (-9223372036854775807 - 1) // -1 }}", "an integer exceeds 64 bits");
}

/* Writes `before`, `count` times `unit`, and `after`. */
static char *repeated(const char *before, const char *unit, int count, const char *after) {
    TextBuffer b = {0};
    text_string(&b, before);
    for (int i = 0; i < count; i++) text_string(&b, unit);
    text_string(&b, after);
    return b.text;
}

static void assert_limited(const char *before, const char *unit, int count, const char *after, const char *part) {
    char *text = repeated(before, unit, count, after);
    assert_refused(text, part);
    free(text);
}

static void test_limits(void **state) {
    (void)state;
    assert_limited("{{ ", "(", 5000, "1", "more than 64 brackets");
    assert_limited("{{ ", "-", 5000, "1 }}", "nested deeper than 64");
    assert_limited("{{ ", "1 if 1 else ", 5000, "1 }}", "nested deeper than 64");
    assert_limited("{{ x", ".a", 5000, " }}", "nested deeper than 200");
    assert_limited("{{ x", " | trim", 5000, " }}", "nested deeper than 200");
    assert_limited("{{ x", " is defined", 5000, " }}", "tests that follow one another");
    assert_limited("", "{% if 1 %}", 5000, "", "nested deeper than 64");
    assert_limited("", "{% for i in l %}", 60, "", "template ends");
    assert_limited("{{ f(", "a=1,", 40, ") }}", "more than 16 keyword arguments");
    assert_limited("{% macro f(", "a,", 40, ") %}", "more than 32 parameters");
    TextBuffer many = {0};
    for (int i = 0; i < 5000; i++) text_format(&many, "{{ a%d }}", i);
    assert_refused(many.text, "more than 4096 names");
    text_free(&many);
    /* time and memory */
    assert_refused("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
                   "takes more than 10000000 steps");
    assert_refused("{% set ns = namespace(s='ab') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
                   "writes more than");
    assert_refused(
        "{% set ns = namespace(s='ab') %}{% for a in range(90000) %}{% set ns.s = ns.s + 'a' * 5000 %}{% endfor %}",
        "more than");
    assert_refused("{{ 'a' * 1000000000000 }}", "more than");
    assert_refused("{{ [1] * 1000000000000 }}", "more than");
    assert_refused("{{ 2 ** 1000000000000 }}", "exceeds 64 bits");
    assert_refused("{{ 'a'.replace('', 'b' * 60000000) }}{{ 'aa' | indent(900000000) }}", "more than");
    assert_refused("{{ 'a\nb' | indent(9000000000000) }}", "more than");
    assert_refused("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "macros call one another deeper than 64");
    assert_refused("{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 'x' }}{% endmacro %}{{ f(50) }}",
                   "more than 10000000 steps");
    assert_refused("{% set a = [] %}{{ a.append(a) }}{{ a }}", "nested deeper than 64");
    assert_refused("{% set a = [] %}{{ a.append(a) }}{{ a | tojson }}", "nested deeper than 64");
    assert_refused("{% set a = [] %}{% set b = [] %}{{ a.append(a) }}{{ b.append(b) }}{{ a == b }}",
                   "nested deeper than 64");
    assert_refused(
        "{% set ns = namespace(a=[1]) %}{% for i in range(300) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
        "nested deeper than 64");
}

/* ---- damaged templates ----------------------------------------------------------------------------------------- */

/* Changes of published templates end in a result or in one clear line. */
static void test_damaged(void **state) {
    (void)state;
    static const char *const pieces[] = {
        "{%",   "%}", "{{", "}}", "{#",   "#}",   "-",     "'",  "\"", "(",           ")",
        "[",    "]",  "|",  ".",  " in ", " is ", " not ", "\\", "\n", "{% endif %}", "{% for x in messages %}",
        "loop", ":",  ",",  "=",  "\xC3"};
    uint64_t seed = 12345;
    size_t i;
    json_t *entry;
    int rendered = 0, refused = 0;
    json_array_foreach(templates, i, entry) {
        const json_t *source = json_object_get(entry, "template");
        for (int round = 0; round < 12; round++) {
            TextBuffer text = {0}, one = {0};
            text_append(&text, json_string_value(source), json_string_length(source));
            for (int change = 0; change <= round % 3; change++) {
                seed = seed * 6364136223846793005u + 1442695040888963407u;
                const char *piece = pieces[(seed >> 40) % (sizeof pieces / sizeof *pieces)];
                const size_t at = (seed >> 20) % (text.length + 1), n = strlen(piece);
                const size_t gone = seed % 7 == 0 && text.length - at > 3 ? 3 : 0;
                text_append(&text, piece, n); /* room; moved below */
                memmove(text.text + at + n, text.text + at + gone, text.length - n - at - gone);
                memcpy(text.text + at, piece, n);
                text.length -= gone;
            }
            if (round % 4 == 3) text.length = (seed >> 13) % text.length;
            Error e = {""};
            Jinja j;
            char *exact = xstrndup(text.text, text.length);
            if (jinja_parse(&j, exact, text.length, &e)) {
                text_clear(&one);
                record(&j, cases[(seed >> 33) % CONVERSATIONS], &one);
                jinja_free(&j);
                rendered++;
            } else {
                require_message(&e);
                refused++;
            }
            free(exact);
            text_free(&text);
            text_free(&one);
        }
    }
    assert_true(getenv("LLMC_TEMPLATES") || (rendered > 50 && refused > 300));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snippets), cmocka_unit_test(test_published), cmocka_unit_test(test_origins),
        cmocka_unit_test(test_errors),   cmocka_unit_test(test_limits),    cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
