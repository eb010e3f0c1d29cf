/* tools.h - the tools that a model may call: their names, schemas and arguments, and the built-in ones.
 *
 *   calculator      {"expression": text}            arithmetic in exact fractions (calculator.h)
 *   search=FILE     {"query": text, "top_k": 3}     passages of a corpus (search.h)
 *   python, c       {"code": text}                  programs in a sandbox (code_tool.h), which the caller runs
 *
 * A tool's schema is OpenAI's: {"type": "function", "function": {"name", "description", "parameters": JSON schema}}.
 * Arguments are compared with it before a call is run: required arguments, types (string, number, integer, boolean,
 * array, object, null) and enum; other keywords are for the model only. An error is a result, too: JSON such as
 * {"error": "division by zero"}.
 *
 *     Tools t = {0};
 *     TextBuffer result = {0};
 *     if (!tools_add(&t, "calculator", &e)) die("%s", e.text);
 *     json_t *arguments = json_pack("{s:s}", "expression", "12*34");
 *     Tool *tool = tools_find(&t, "calculator");
 *     const bool ok = tool_check(tool, arguments, &result) && tool_run(tool, arguments, &result, &e) == TOOL_DONE;
 *     printf("%s%s\n", ok ? "" : "failed: ", result.text);                                        // 408
 *     text_free(&result);
 *     json_decref(arguments);
 *     tools_free(&t);
 */
#ifndef LLMC_TOOLS_TOOLS_H
#define LLMC_TOOLS_TOOLS_H

#include "../base/error.h"             /* Error, error_set, xrealloc, xstrdup */
#include "../base/json_text.h"         /* json_utf8 */
#include "../base/text.h"              /* TextBuffer, text_format, text_clear */
#include "../reward/verify_rational.h" /* rational_available */
#include "calculator.h"                /* calculator */
#include "search.h"                    /* SEARCH_TOP, SEARCH_TOP_MAX, Search, search_close, ... */
#include <assert.h>
#include <jansson.h>

#define TOOLS_BUILT_IN "calculator, search=FILE, python, c"

typedef enum { TOOL_CALCULATOR, TOOL_SEARCH, TOOL_CODE, TOOL_PROGRAM } ToolKind;

/* How a call of a built-in tool ended. */
typedef enum {
    TOOL_DONE,  /* it has a result */
    TOOL_WRONG, /* the result is what the model did wrong */
    TOOL_BROKEN /* our machinery failed: there is no result */
} ToolEnd;

typedef struct Tool {
    ToolKind kind;
    char *name;
    json_t *schema;
    int program;    /* TOOL_PROGRAM: index of the program that has it */
    Search *search; /* TOOL_SEARCH: the corpus */
    int64_t calls;
} Tool;

typedef struct Tools {
    Tool *tool;
    int count;
} Tools;

static inline void tools_free(Tools *t) {
    for (int i = 0; i < t->count; i++) {
        free(t->tool[i].name);
        search_close(t->tool[i].search);
        json_decref(t->tool[i].schema);
    }
    free(t->tool);
    *t = (Tools){0};
}

/* The tool of this name, or NULL. */
static inline Tool *tools_find(const Tools *t, const char *name) {
    for (int i = 0; i < t->count; i++)
        if (!strcmp(t->tool[i].name, name)) return &t->tool[i];
    return NULL;
}

/* Adds a tool with its schema, a reference to which is taken. Fails if its name is taken. */
static inline bool tools_add_schema(Tools *t, ToolKind kind, json_t *schema, Error *e) {
    const char *name = json_string_value(json_object_get(json_object_get(schema, "function"), "name"));
    if (!name || !*name) {
        json_decref(schema);
        return error_set(e, "a tool's schema has no {\"function\": {\"name\": ...}}");
    }
    if (tools_find(t, name)) {
        error_set(e, "tool %.80s: there are two of this name", name);
        json_decref(schema);
        return false;
    }
    t->tool = (Tool *)xrealloc(t->tool, (size_t)t->count + 1, sizeof *t->tool);
    t->tool[t->count++] = (Tool){.kind = kind, .name = xstrdup(name), .schema = schema};
    return true;
}

/* The schema of a tool whose only argument is a text. */
static inline json_t *tool_schema(const char *name, const char *about, const char *argument,
                                  const char *argument_about) {
    return json_pack("{s:s,s:{s:s,s:s,s:{s:s,s:{s:{s:s,s:s}},s:[s]}}}", "type", "function", "function", "name", name,
                     "description", about, "parameters", "type", "object", "properties", argument, "type", "string",
                     "description", argument_about, "required", argument);
}

/* The schema of `search`. */
static inline json_t *tool_search_schema(void) {
    json_t *schema =
               tool_schema("search", "Searches documents for the words of a query.", "query", "words to search for"),
           *parameters = json_object_get(json_object_get(schema, "function"), "parameters");
    json_object_set_new(
        json_object_get(parameters, "properties"), "top_k",
        json_pack("{s:s,s:s,s:i}", "type", "integer", "description", "number of documents", "default", SEARCH_TOP));
    return schema;
}

/* Adds the tool `search` with its corpus. */
static inline bool tools_add_search(Tools *t, const char *path, Error *e) {
    if (!*path) return error_set(e, "search: give the corpus: search=FILE; data/make_corpus makes one");
    Search *search = search_open(path, e);
    if (!search || !tools_add_schema(t, TOOL_SEARCH, tool_search_schema(), e)) {
        search_close(search);
        return false;
    }
    t->tool[t->count - 1].search = search;
    return true;
}

/* Adds the built-in tool of --tools NAME. */
static inline bool tools_add(Tools *t, const char *spec, Error *e) {
    if (!strncmp(spec, "search", 6) && (!spec[6] || spec[6] == '='))
        return tools_add_search(t, spec[6] ? spec + 7 : "", e);
    if (!strcmp(spec, "calculator"))
        return rational_available(e) &&
               tools_add_schema(t, TOOL_CALCULATOR,
                                tool_schema("calculator", "Computes the value of an arithmetic expression exactly.",
                                            "expression", "numbers with + - * / // % ** and parentheses"),
                                e);
    if (!strcmp(spec, "python"))
        return tools_add_schema(
            t, TOOL_CODE,
            tool_schema("python", "Runs a Python program and returns what it prints.", "code",
                        "a program for Python 3 with its standard library, without input or network"),
            e);
    if (!strcmp(spec, "c"))
        return tools_add_schema(t, TOOL_CODE,
                                tool_schema("c", "Compiles and runs a C program and returns what it prints.", "code",
                                            "a program in C11 with a main function, without input or network"),
                                e);
    return error_set(e, "tool '%.80s': unknown, must be " TOOLS_BUILT_IN, spec);
}

/* ---- arguments ------------------------------------------------------------------------------------------------- */

/* Whether a value has the type that a schema names. */
static inline bool tool_type_fits(const json_t *value, const char *type) {
    if (!strcmp(type, "string")) return json_is_string(value);
    if (!strcmp(type, "number")) return json_is_number(value);
    if (!strcmp(type, "integer"))
        return json_is_integer(value) ||
               (json_is_real(value) && json_real_value(value) == floor(json_real_value(value)));
    if (!strcmp(type, "boolean")) return json_is_boolean(value);
    if (!strcmp(type, "array")) return json_is_array(value);
    if (!strcmp(type, "object")) return json_is_object(value);
    if (!strcmp(type, "null")) return json_is_null(value);
    return true;
}

/* Compares one argument with its schema: type, a name or a list of them, and enum. */
static inline bool tool_check_argument(const char *key, const json_t *value, const json_t *schema, TextBuffer *why) {
    const json_t *type = json_object_get(schema, "type"), *allowed = json_object_get(schema, "enum");
    bool fits = !json_array_size(type);
    for (size_t i = 0; i < json_array_size(type); i++) {
        const char *name = json_string_value(json_array_get(type, i));
        fits = fits || (name && tool_type_fits(value, name));
    }
    if (json_is_string(type)) fits = tool_type_fits(value, json_string_value(type));
    if (!fits)
        text_format(why, "argument '%.80s' must be of type %.40s", key,
                    json_is_string(type) ? json_string_value(type) : "listed in the schema");
    bool listed = !json_is_array(allowed);
    for (size_t i = 0; i < json_array_size(allowed); i++)
        listed = listed || json_equal(value, json_array_get(allowed, i));
    if (fits && !listed) text_format(why, "argument '%.80s' is none of the values of its enum", key);
    return fits && listed;
}

/* Compares the arguments of a call with the tool's schema. Returns false with the reason in *why. */
static inline bool tool_check(const Tool *t, json_t *arguments, TextBuffer *why) {
    const json_t *parameters = json_object_get(json_object_get(t->schema, "function"), "parameters");
    const json_t *required = json_object_get(parameters, "required"),
                 *properties = json_object_get(parameters, "properties");
    const char *key;
    json_t *value;
    text_clear(why);
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (!name || json_object_get(arguments, name)) continue;
        text_format(why, "argument '%.80s' of %.80s is missing", name, t->name);
        return false;
    }
    json_object_foreach(arguments, key, value) {
        const json_t *schema = json_object_get(properties, key);
        if (schema && !tool_check_argument(key, value, schema, why)) return false;
    }
    return true;
}

/* The result of a call that failed: {"error": why}. */
static inline char *tool_error(const char *why) {
    json_t *object = json_pack("{s:o}", "error", json_utf8(why, strlen(why)));
    char *text = json_dumps(object, 0);
    json_decref(object);
    return text;
}

/* ---- built-in tools -------------------------------------------------------------------------------------------- */

static inline ToolEnd tool_run_calculator(const json_t *arguments, TextBuffer *result) {
    const json_t *expression = json_object_get(arguments, "expression");
    return calculator(json_string_value(expression), json_string_length(expression), result) ? TOOL_DONE : TOOL_WRONG;
}

static inline ToolEnd tool_run_search(const Tool *t, const json_t *arguments, TextBuffer *result, Error *e) {
    const json_t *query = json_object_get(arguments, "query"), *given = json_object_get(arguments, "top_k");
    const double top = given ? json_number_value(given) : SEARCH_TOP;
    if (!(top >= 1 && top <= SEARCH_TOP_MAX)) {
        text_format(result, "top_k must be from 1 to %d", SEARCH_TOP_MAX);
        return TOOL_WRONG;
    }
    return search_run(t->search, json_string_value(query), json_string_length(query), (int)top, result, e)
               ? TOOL_DONE
               : TOOL_BROKEN;
}

/* Runs a call of a built-in tool that ends at once (not TOOL_CODE), whose arguments tool_check() has accepted. *result: its
 * result, or what the model did wrong. *e: why our machinery failed. */
static inline ToolEnd tool_run(Tool *t, const json_t *arguments, TextBuffer *result, Error *e) {
    text_clear(result);
    if (t->kind == TOOL_SEARCH) return tool_run_search(t, arguments, result, e);
    assert(t->kind == TOOL_CALCULATOR);
    return tool_run_calculator(arguments, result);
}

#endif
