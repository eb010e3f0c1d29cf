/* code_tests.h - the tests of a record whose completions are programs: their forms and what each field may have.
 *
 *   form            fields                                              from
 *   asserts         tests: ["assert f(1) == 2", ...]; setup              MBPP (test_list, test_setup_code), open-instruct
 *   check function  test: "def check(candidate): ..."; entry_point       HumanEval
 *   input, output   tests: {inputs: [...], outputs: [...]}               APPS, TACO, LiveCodeBench
 *   calls           tests: {inputs, outputs, fn_name}                    the same; an argument a line, as JSON
 *   command         files: {name: text}; run: "make test"                passes if its exit status is 0
 *
 * setup is run before the completion's program, for asserts, a check function and calls. test_setup_code is run after it,
 * because that of MBPP uses the program's classes, and before that code the statements of test_imports, a list, which
 * MBPP's sanitized rows have for their tests. language is python, or c with inputs and outputs or a command. Names of
 * MBPP are read too. A field that is null is absent. The inputs of a form are texts, or lists of lines.
 *
 *     json_t *fields = json_pack("{s:[s]}", "tests", "assert f(1) == 2");
 *     const char *field;
 *     if (!code_tests_check(fields, &field, &e)) printf("field '%s' %s\n", field, e.text);
 *     printf("%d", code_form(fields));       // CODE_ASSERTS
 */
#ifndef LLMC_REWARD_CODE_TESTS_H
#define LLMC_REWARD_CODE_TESTS_H

#include "../base/error.h" /* error_set, Error */
#include "verify_answer.h" /* verify_present */
#include <jansson.h>

typedef enum { CODE_NO_TEST, CODE_ASSERTS, CODE_CHECK, CODE_OUTPUTS, CODE_CALLS, CODE_COMMAND } CodeForm;

enum { CODE_TESTS_MAX = 8 << 20 };

/* The value of a field under the first of two names that the record has, or NULL; *name is set to that name. */
static inline const json_t *code_field(const json_t *fields, const char *first, const char *second, const char **name) {
    const json_t *value = verify_present(fields, *name = first);
    return value ? value : verify_present(fields, *name = second);
}

static inline const json_t *code_tests(const json_t *fields, const char **name) {
    return code_field(fields, "tests", "test_list", name);
}

static inline const json_t *code_setup(const json_t *fields, const char **name) {
    return code_field(fields, "setup", "test_setup_code", name);
}

/* The function that is called with the inputs, a field of the tests or of the record; NULL: the program reads them. */
static inline const json_t *code_function(const json_t *fields, const json_t *tests) {
    const json_t *name = verify_present(tests, "fn_name");
    return name ? name : verify_present(fields, "fn_name");
}

/* The form of a record's tests, by the fields that it has. */
static inline CodeForm code_form(const json_t *fields) {
    const char *name;
    const json_t *tests = code_tests(fields, &name);
    if (json_is_object(tests)) return code_function(fields, tests) ? CODE_CALLS : CODE_OUTPUTS;
    if (tests) return CODE_ASSERTS;
    if (verify_present(fields, "test")) return CODE_CHECK;
    if (verify_present(fields, "run") || verify_present(fields, "files")) return CODE_COMMAND;
    return CODE_NO_TEST;
}

/* Whether a form's tests are Python, and run in the program's interpreter. */
static inline bool code_form_is_python(CodeForm form) {
    return form == CODE_ASSERTS || form == CODE_CHECK || form == CODE_CALLS;
}

/* Sets the error "is TYPE, must be MUST". */
static inline bool code_field_error(const json_t *value, const char *must, Error *e) {
    static const char *const types[] = {"an object", "a list", "a text", "a number",
                                        "a number",  "true",   "false",  "null"};
    return error_set(e, "is %s, must be %s", value ? types[json_typeof(value)] : "absent", must);
}

static inline bool code_is_texts(const json_t *list) {
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!json_is_string(json_array_get(list, i))) return false;
    return json_is_array(list);
}

/* A list of inputs or outputs: texts, lists of lines, or for calls any value. */
static inline bool code_check_list(const json_t *list, const char *name, bool any, Error *e) {
    if (!json_is_array(list) || !json_array_size(list))
        return error_set(e, "has no list of %s, must have one that is not empty", name);
    for (size_t i = 0; i < json_array_size(list) && !any; i++) {
        const json_t *item = json_array_get(list, i);
        if (!json_is_string(item) && !code_is_texts(item))
            return error_set(e, "has an item %zu of %s that is no text and no list of texts", i + 1, name);
    }
    return true;
}

static inline bool code_check_outputs(const json_t *fields, const json_t *tests, Error *e) {
    const json_t *in = json_object_get(tests, "inputs"), *out = json_object_get(tests, "outputs"),
                 *function = code_function(fields, tests);
    if (!code_check_list(in, "inputs", function, e) || !code_check_list(out, "outputs", function, e)) return false;
    if (json_array_size(in) != json_array_size(out))
        return error_set(e, "has %zu inputs and %zu outputs, must have as many of both", json_array_size(in),
                         json_array_size(out));
    return !function || json_is_string(function) || error_set(e, "has a fn_name that is no text");
}

/* Whether a list has texts alone. what: the statements that they are. */
static inline bool code_check_statements(const json_t *list, const char *what, Error *e) {
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!json_is_string(json_array_get(list, i)))
            return error_set(e, "has an item %zu that is no text, must be a list of %s", i + 1, what);
    return true;
}

static inline bool code_check_asserts(const json_t *tests, Error *e) {
    if (!json_is_array(tests))
        return code_field_error(tests, "a list of asserts, or an object with inputs and outputs", e);
    if (!json_array_size(tests)) return error_set(e, "is an empty list, must have a test");
    return code_check_statements(tests, "asserts", e);
}

static inline bool code_check_command(const json_t *fields, const char **field, Error *e) {
    const char *name;
    const json_t *run = json_object_get(fields, *field = "run"), *files = verify_present(fields, "files"), *text;
    if (!json_is_string(run)) return code_field_error(run, "the command that tests the files", e);
    *field = "files";
    if (!files) return true;
    if (!json_is_object(files)) return code_field_error(files, "an object of file names and texts", e);
    json_object_foreach((json_t *)files, name, text) {
        if (!*name || strchr(name, '/') || strstr(name, ".."))
            return error_set(e, "has a file '%.60s', must be a name without '/' and '..'", name);
        if (!json_is_string(text)) return error_set(e, "has a file '%.60s' that is no text", name);
    }
    return true;
}

static inline bool code_check_size(const json_t *fields, const json_t *tests, Error *e) {
    const json_t *all = tests ? tests : json_object_get(fields, "test");
    return json_dumpb(all, NULL, 0, JSON_ENCODE_ANY | JSON_COMPACT) <= CODE_TESTS_MAX ||
           error_set(e, "has more than %d MiB, must be smaller", CODE_TESTS_MAX >> 20);
}

/* Whether the fields have a form that can be run; if not, *field is the name of one that has not, and the error says why. A
 * record without tests is good here: its completions cannot be scored. fields: an object, or NULL. */
static inline bool code_tests_check(const json_t *fields, const char **field, Error *e) {
    const char *name;
    const json_t *tests = code_tests(fields, &name), *setup = code_setup(fields, field),
                 *imports = verify_present(fields, "test_imports"),
                 *language = verify_present(fields, *field = "language");
    const CodeForm form = code_form(fields);
    const char *word = json_string_value(language);
    if (language && (!word || (strcmp(word, "python") && strcmp(word, "c"))))
        return error_set(e, "is %s%.40s%s, must be python or c", word ? "'" : "no text", word ? word : "",
                         word ? "'" : "");
    if (word && !strcmp(word, "c") && code_form_is_python(form))
        return error_set(e, "is 'c', whose tests must be inputs and outputs, or a command");
    code_setup(fields, field);
    if (setup && !json_is_string(setup)) return code_field_error(setup, "a text", e);
    *field = "test_imports";
    if (imports && !json_is_array(imports)) return code_field_error(imports, "a list of import statements", e);
    if (!code_check_statements(imports, "import statements", e)) return false;
    if (tests && verify_present(fields, *field = "test"))
        return error_set(e, "is given together with the field '%s', and only one is read: remove the other", name);
    *field = tests ? name : "test";
    if (!code_check_size(fields, tests, e)) return false;
    if (form == CODE_OUTPUTS || form == CODE_CALLS) return code_check_outputs(fields, tests, e);
    if (form == CODE_ASSERTS) return code_check_asserts(tests, e);
    if (form == CODE_COMMAND) return code_check_command(fields, field, e);
    if (form != CODE_CHECK) return true;
    const json_t *test = json_object_get(fields, "test"), *entry = json_object_get(fields, "entry_point");
    if (!json_is_string(test) || !strstr(json_string_value(test), "def check("))
        return code_field_error(test, "a text with the function 'def check(candidate): ...'", e);
    *field = "entry_point";
    return json_is_string(entry) || code_field_error(entry, "the name of the function that 'test' checks", e);
}

/* ---- fields that are not read -------------------------------------------------------------------------------------- */

enum { CODE_UNREAD = 9 };

/* Whether the record has the field, and it is not empty. */
static inline bool code_has(const json_t *fields, const char *name) {
    const json_t *value = verify_present(fields, name);
    return value &&
           (json_is_string(value) ? json_string_length(value) : !json_is_array(value) || json_array_size(value)) &&
           (!json_is_object(value) || json_object_size(value));
}

/* Sets name[] to the fields of tests that the record has but that its form does not read. Returns their number. */
static inline int code_unread_fields(const json_t *fields, const char *name[CODE_UNREAD]) {
    enum { PYTHON = 1 << CODE_ASSERTS | 1 << CODE_CHECK | 1 << CODE_CALLS };
    static const struct {
        const char *name, *first; /* first: the name under which the field is read, if the record has that one */
        int forms;                /* that read the field */
    } known[CODE_UNREAD] = {{"test_list", "tests", 1 << CODE_ASSERTS | 1 << CODE_OUTPUTS | 1 << CODE_CALLS},
                            {"setup", NULL, PYTHON},
                            {"test_setup_code", "setup", PYTHON},
                            {"entry_point", NULL, 1 << CODE_CHECK},
                            {"fn_name", NULL, 1 << CODE_CALLS},
                            {"run", NULL, 1 << CODE_COMMAND},
                            {"files", NULL, 1 << CODE_COMMAND},
                            {"test_imports", NULL, PYTHON},
                            {"challenge_test_list", NULL, 0}}; /* of MBPP */
    const int form = 1 << code_form(fields);
    int count = 0;
    for (int i = 0; i < CODE_UNREAD; i++) {
        const bool second = known[i].first && verify_present(fields, known[i].first);
        if ((second || !(known[i].forms & form)) && code_has(fields, known[i].name)) name[count++] = known[i].name;
    }
    return count;
}

#endif
