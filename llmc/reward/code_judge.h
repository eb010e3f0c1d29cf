/* code_judge.h - rewards of programs: runs the tests of many completions in the sandbox and judges the results outside.
 *
 * What a test expects never enters the sandbox, if that is possible: the program gets arguments or an input, and what it
 * returns or writes is compared here (code_value.h). Asserts and check functions are translated for this, by Python's ast in
 * a sandbox that runs no completion: `assert f([1, 2]) == 3` becomes the expression f([1, 2]) and the value 3. An assert that
 * has no such form (a loop, two calls) stays an assert and is weak: it runs in the program's interpreter, after the program, and
 * counts only with a secret of 128 bits that is sent with it. A determined program can defeat weak tests.
 *
 * Outcome of a completion: pass, or that of its first test that does not pass (sandbox_run.h). SANDBOX_FAILED is a failure of
 * the machine after a second try, and has no reward.
 *
 *     CodeJudge j;
 *     CodeOptions options = code_defaults();
 *     const RewardInput in = {.completion = "def f(x):\n    return x + 1", .fields = "{\"tests\":[\"assert f(1) == 2\"]}"};
 *     CodeVerdict verdict;
 *     if (!code_judge_open(&j, &options, &e)) die("%s", e.text);
 *     if (!code_judge_score(&j, &in, 1, true, &verdict, &e)) die("%s", e.text);
 *     puts(sandbox_outcome_name(verdict.outcome));       // pass
 *     code_judge_close(&j);
 *
 * The same program for the same record is run once, unless it ran out of time or memory.
 */
#ifndef LLMC_REWARD_CODE_JUDGE_H
#define LLMC_REWARD_CODE_JUDGE_H

#include "../base/clock.h"              /* clock_seconds */
#include "../base/error.h"              /* Error, xstrdup, xcalloc, error_set, ... */
#include "../base/io.h"                 /* XXH64 */
#include "../base/json_text.h"          /* json_utf8 */
#include "../base/options.h"            /* OPTION_CHOICE, OPTION_REAL, OPTION_GROUP, OPTION_INT */
#include "../base/text.h"               /* TextBuffer, text_free, text_append, text_clear, ... */
#include "../sandbox/sandbox.h"         /* SANDBOX_REPLY, SANDBOX_BROKEN, SANDBOX_WAIT, SandboxSession, ... */
#include "../sandbox/sandbox_outcome.h" /* SANDBOX_PASS, SandboxOutcome, SANDBOX_ERROR, SANDBOX_FAILED, ... */
#include "../sandbox/sandbox_process.h" /* sandbox_process_files */
#include "../sandbox/sandbox_run.h"     /* sandbox_outcome, sandbox_outcome_of_end */
#include "code_extract.h"               /* code_extract, CODE_EXTRACT_CHOICES, CODE_FENCE_CHOICES, CODE_LAST, ... */
#include "code_reward.h"                /* CodeVerdict, CodeScorer */
#include "code_tests.h"                 /* CODE_COMMAND, CODE_ASSERTS, CODE_CHECK, code_tests, ... */
#include "code_value.h"                 /* code_value_equal, CodeCompare, code_content, code_output_equal, ... */
#include "verify_answer.h"              /* RewardInput, VerifySpan, verify_fields, verify_completion, ... */
#include <sys/random.h>
#include <xxhash.h>

typedef struct CodeOptions {
    SandboxOptions sandbox;
    double timeout, total; /* seconds: a test, a completion */
    int64_t most;          /* tests; 0: all */
    double tolerance;
    int extract, fence;
    int language; /* of records that name none: 1 is C */
} CodeOptions;

static inline CodeOptions code_defaults(void) {
    return (CodeOptions){.sandbox = sandbox_defaults(), .timeout = 6, .total = 30};
}

// clang-format off
#define CODE_OPTIONS(o)                                                                                                \
    OPTION_GROUP ("Programs (task `code`, --tools python and c; doc/code.md)"),                                        \
    SANDBOX_OPTIONS((o).sandbox),                                                                                      \
    OPTION_REAL  ("code-timeout",         0, &(o).timeout,   0.01, 1e5,                                                   \
                  "seconds that a test, or a program of --tools, may take"),                                           \
    OPTION_REAL  ("code-total-timeout",   0, &(o).total,     0.01, 1e6, "seconds that all tests of a completion may take"), \
    OPTION_INT   ("code-max-tests",       0, &(o).most,      0, 1e6,                                                      \
                  "run only the first N tests of a record; 0: all. Weak tests, asserts that cannot be judged outside " \
                  "the sandbox, come last; a determined program can defeat them"),\
    OPTION_CHOICE("code-extract",         0, &(o).extract,   CODE_EXTRACT_CHOICES,                                     \
                  "which fenced block of a completion is the program"),                                                \
    OPTION_CHOICE("code-fence",           0, &(o).fence,     CODE_FENCE_CHOICES,                                       \
                  "whether a completion without a fenced block is a program"),                                         \
    OPTION_REAL  ("code-float-tolerance", 0, &(o).tolerance, 0, 1,                                                     \
                  "relative tolerance of numbers in results; 0: exact decimals"),                                      \
    OPTION_CHOICE("code-language",        0, &(o).language,  "python|c",                                               \
                  "language of records without a field `language`")

/* Entries of a table for options_refuse_unused(). tools: whether the model may call programs, which have no tests; reward:
 * whether a reward program runs in the sandbox. */
#define CODE_USES(o, used, tools, reward, why)                                                                         \
    {&(o).sandbox.kind, (used) || (tools) || (reward), why},                                                           \
        {&(o).sandbox.command, (used) || (tools) || (reward), why}, {&(o).sandbox.workers, (used) || (tools), why},    \
        {&(o).sandbox.memory, (used) || (tools) || (reward), why},                                                     \
        {&(o).timeout, (used) || (tools), why}, {&(o).total, used, why}, {&(o).most, used, why},                       \
        {&(o).extract, used, why}, {&(o).fence, used, why}, {&(o).tolerance, used, why}, {&(o).language, used, why}
// clang-format on

/* ---- records ------------------------------------------------------------------------------------------------------- */

/* The tests of a record. */
typedef struct CodeRow {
    uint64_t hash; /* 0: none */
    CodeForm form;
    bool c;
    json_t *tests;       /* in the order in which they run: calls, then weak tests */
    char *setup, *after; /* code that is run before the program, and after it: "" if none, NULL if `why` is set */
    char *entry;         /* or NULL */
    json_t *files, *run; /* of a command */
    int weak;            /* number of weak tests */
    char *why;           /* why its completions cannot be scored, or NULL */
} CodeRow;

typedef struct CodeMemo {
    uint64_t key; /* 0: none */
    CodeVerdict verdict;
} CodeMemo;

/* Counts since they were last taken. */
typedef struct CodeCounts {
    double outcome[SANDBOX_OUTCOMES], unscorable, tests, misses;
} CodeCounts;

typedef struct CodeJudge {
    CodeScorer scorer; /* code_judge_score(), for rewards.h and evaluation.h; first */
    bool open;         /* the sandbox is */
    CodeOptions o;
    Sandbox sandbox;
    SandboxSession translator;
    bool translating; /* the translator's session is open */
    CodeRow *rows;    /* open addressing by hash */
    size_t capacity, count;
    CodeMemo *memo; /* (CODE_MEMO) */
    CodeCounts counts;
    double *seconds; /* (timed) of the completions that were run */
    size_t timed, timed_capacity;
    Error failure; /* the last failure of the sandbox */
    bool warned;   /* its user has said that there was one */
} CodeJudge;

enum { CODE_MEMO = 1 << 16 };

static inline void code_row_free(CodeRow *r) {
    json_decref(r->tests), json_decref(r->files), json_decref(r->run);
    free(r->setup), free(r->after), free(r->entry), free(r->why);
    *r = (CodeRow){0};
}

static inline void code_judge_close(CodeJudge *j) {
    if (j->translating) sandbox_end(&j->sandbox, &j->translator);
    if (j->open) sandbox_close(&j->sandbox);
    for (size_t i = 0; i < j->capacity; i++) code_row_free(&j->rows[i]);
    free(j->rows), free(j->memo), free(j->seconds);
    *j = (CodeJudge){0};
}

static inline bool code_judge_scorer(CodeScorer *scorer, const RewardInput *in, int n, bool stop, CodeVerdict *out,
                                     Error *e);

static inline bool code_judge_open(CodeJudge *j, const CodeOptions *o, Error *e) {
    *j = (CodeJudge){.o = *o, .scorer = {code_judge_scorer}};
    j->open = sandbox_open(&j->sandbox, &o->sandbox, e);
    if (!j->open) return false;
    j->memo = (CodeMemo *)xcalloc(CODE_MEMO, sizeof *j->memo);
    j->capacity = 64;
    j->rows = (CodeRow *)xcalloc(j->capacity, sizeof *j->rows);
    return true;
}

/* Asks the translator for the tests of a row; a new reference, or NULL with *why set (to be freed) or with an error, which is
 * a failure of the sandbox. */
static inline json_t *code_translate(CodeJudge *j, const json_t *step, char **why, Error *e) {
    SandboxSession *x = &j->translator;
    SandboxEvent event;
    const double until = clock_seconds() + 20;
    if (!j->translating) {
        json_t *request = json_pack("{s:s}", "mode", "translate");
        sandbox_begin(&j->sandbox, x, request, 1e6);
        json_decref(request);
        j->translating = true;
        while ((event = sandbox_serve(x)) == SANDBOX_WAIT) sandbox_wait(x, 1);
        if (event != SANDBOX_REPLY) goto failed;
    }
    sandbox_send(x, json_deep_copy(step));
    while ((event = sandbox_serve(x)) == SANDBOX_WAIT && clock_seconds() < until) sandbox_wait(x, 1);
    json_t *tests = event == SANDBOX_REPLY ? json_object_get(x->reply, "tests") : NULL;
    if (tests) return json_incref(tests);
    if (event == SANDBOX_REPLY) {
        const char *text = json_string_value(json_object_get(x->reply, "text"));
        *why = xstrdup(text ? text : "the tests cannot be translated");
        return NULL;
    }
    if (event != SANDBOX_BROKEN) *why = xstrdup("translating the tests takes too long");
failed:
    if (event == SANDBOX_BROKEN) error_set(e, "sandbox: %s", x->failure.text);
    else if (!*why) error_set(e, "sandbox: the translator of tests ended");
    sandbox_end(&j->sandbox, x);
    j->translating = false;
    return NULL;
}

/* A text, or the lines of a list joined; NULL has no line. */
static inline json_t *code_joined(const json_t *value) {
    TextBuffer text = {0};
    if (json_is_string(value)) return json_incref((json_t *)value);
    text_clear(&text);
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *line = json_array_get(value, i);
        if (i) text_string(&text, "\n");
        text_append(&text, json_string_value(line), json_string_length(line));
    }
    json_t *joined = json_stringn(text.text, text.length);
    text_free(&text);
    return joined;
}

/* The arguments of a call as JSON texts: the lines of a text, or the items of a list. */
static inline json_t *code_arguments(const json_t *input) {
    json_t *list = json_array();
    if (json_is_string(input)) {
        VerifySpan rest = {json_string_value(input), json_string_length(input)}, line;
        while (code_line(&rest, &line)) {
            line = verify_trim(line);
            if (line.n) json_array_append_new(list, json_stringn(line.s, line.n));
        }
        return list;
    }
    for (size_t i = 0; i < json_array_size(input); i++) {
        char *text = json_dumps(json_array_get(input, i), JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(17));
        json_array_append_new(list, json_string(text));
        free(text);
    }
    return list;
}

/* The value that a call should return: a text is parsed as JSON if it is JSON. */
static inline json_t *code_expected(const json_t *output) {
    json_t *parsed = json_is_string(output) ? json_loadb(json_string_value(output), json_string_length(output),
                                                         JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL)
                                            : NULL;
    json_t *value = code_value_of_json(parsed ? parsed : output);
    json_decref(parsed);
    return value;
}

/* Reads the tests of the forms with inputs and outputs. */
static inline void code_row_outputs(CodeRow *r, const json_t *fields, const json_t *tests) {
    const json_t *in = json_object_get(tests, "inputs"), *out = json_object_get(tests, "outputs");
    const char *function = json_string_value(code_function(fields, tests));
    r->tests = json_array();
    for (size_t i = 0; i < json_array_size(in); i++) {
        const json_t *input = json_array_get(in, i), *output = json_array_get(out, i);
        json_array_append_new(
            r->tests, function ? json_pack("{s:s,s:o,s:o}", "call", function, "args", code_arguments(input), "value",
                                           code_expected(output))
                               : json_pack("{s:o,s:o}", "input", code_joined(input), "output", code_joined(output)));
    }
}

/* Has the asserts of a row translated, and puts weak tests last. */
static inline bool code_row_asserts(CodeJudge *j, CodeRow *r, const json_t *fields, Error *e) {
    const char *name;
    json_t *step = json_object(), *ordered = json_array();
    if (r->form == CODE_ASSERTS) json_object_set(step, "tests", (json_t *)code_tests(fields, &name));
    else {
        json_object_set(step, "test", json_object_get(fields, "test"));
        json_object_set(step, "entry_point", json_object_get(fields, "entry_point"));
    }
    json_t *made = code_translate(j, step, &r->why, e);
    json_decref(step);
    for (int weak = 0; weak < 2; weak++)
        for (size_t i = 0; i < json_array_size(made); i++) {
            json_t *test = json_array_get(made, i);
            if ((json_object_get(test, "check") != NULL) == weak) json_array_append(ordered, test);
            r->weak += weak && json_object_get(test, "check");
        }
    const bool ok = made || r->why;
    if (made && !json_array_size(ordered)) r->why = xstrdup("all its tests are trivially true");
    json_decref(made);
    r->tests = ordered;
    return ok;
}

/* Reads the code that is run before the program, and after it: the imports of the tests, then MBPP's setup. */
static inline void code_row_setup(CodeRow *r, const json_t *fields) {
    const char *name;
    const json_t *setup = code_setup(fields, &name);
    const char *code = setup ? json_string_value(setup) : "";
    const bool before = !strcmp(name, "setup");
    TextBuffer after = {0};
    json_t *imports = code_joined(verify_present(fields, "test_imports"));
    text_format(&after, "%s%s%s", json_string_value(imports), json_string_length(imports) ? "\n" : "",
                before ? "" : code);
    r->setup = xstrdup(before ? code : "");
    r->after = xstrdup(after.text);
    json_decref(imports);
    text_free(&after);
}

/* Reads a record. False if the sandbox failed. */
static inline bool code_row_read(CodeJudge *j, CodeRow *r, const json_t *fields, Error *e) {
    const char *field;
    Error why;
    const char *language = json_string_value(json_object_get(fields, "language"));
    const char *entry = json_string_value(json_object_get(fields, "entry_point"));
    r->form = code_form(fields);
    r->c = language ? !strcmp(language, "c") : j->o.language;
    r->entry = entry ? xstrdup(entry) : NULL;
    if (!code_tests_check(fields, &field, &why)) {
        char text[1200];
        snprintf(text, sizeof text, "field '%s' %s", field, why.text);
        r->why = xstrdup(text);
        return true;
    }
    code_row_setup(r, fields);
    if (r->c && code_form_is_python(r->form)) {
        r->why = xstrdup("asserts and calls are not for --code-language c");
        return true;
    }
    switch (r->form) {
    case CODE_NO_TEST: r->why = xstrdup("it has no tests"); return true;
    case CODE_ASSERTS:
    case CODE_CHECK: return code_row_asserts(j, r, fields, e);
    case CODE_COMMAND:
        r->files = json_deep_copy(json_object_get(fields, "files"));
        if (!json_is_object(r->files)) {
            json_decref(r->files);
            r->files = json_object();
        }
        r->run = json_incref(json_object_get(fields, "run"));
        r->tests = json_pack("[{s:s}]", "input", "");
        return true;
    default: code_row_outputs(r, fields, code_tests(fields, &field)); return true;
    }
}

/* The place of a record in the table: its own, or the free one where it belongs. */
static inline CodeRow *code_row_place(CodeRow *rows, size_t capacity, uint64_t hash) {
    size_t i = hash & (capacity - 1);
    while (rows[i].hash && rows[i].hash != hash) i = (i + 1) & (capacity - 1);
    return &rows[i];
}

/* The tests of a completion's record; NULL with an error if the sandbox failed. Valid until the next call. */
static inline CodeRow *code_judge_row(CodeJudge *j, const RewardInput *in, Error *e) {
    const char *text = in->fields ? in->fields : "";
    const uint64_t hash = XXH64(text, strlen(text), 0) | 1;
    CodeRow *r = code_row_place(j->rows, j->capacity, hash);
    if (r->hash) return r;
    if (2 * j->count >= j->capacity) {
        CodeRow *more = (CodeRow *)xcalloc(2 * j->capacity, sizeof *more);
        for (size_t i = 0; i < j->capacity; i++)
            if (j->rows[i].hash) *code_row_place(more, 2 * j->capacity, j->rows[i].hash) = j->rows[i];
        free(j->rows);
        j->rows = more;
        j->capacity *= 2;
    }
    r = code_row_place(j->rows, j->capacity, hash);
    json_t *fields = verify_fields(in);
    const bool ok = code_row_read(j, r, fields, e);
    json_decref(fields);
    if (!ok) {
        code_row_free(r);
        return NULL;
    }
    r->hash = hash;
    j->count++;
    return r;
}

/* ---- one completion ------------------------------------------------------------------------------------------------ */

/* A completion whose tests run. */
typedef struct CodeSlot {
    bool loading; /* the program is being loaded or compiled */
    int first;    /* index of an earlier completion with the same program for the same record, or -1 */
    uint64_t key;
    const CodeRow *row;
    TextBuffer code;
    SandboxSession session;
    int test, tests;
    bool retried;
    double sent;    /* when the present step was */
    double elapsed; /* seconds of the sessions before */
    char secret[33];
    CodeVerdict v;
} CodeSlot;

/* Sets `all` to the program that a completion stands for: a check function's prompt comes before it, unless it defines the
 * function. */
static inline void code_program(const RewardInput *in, const CodeRow *r, const TextBuffer *code, TextBuffer *all) {
    text_clear(all);
    if (r->form == CODE_CHECK && r->entry && !code_defines(code->text, r->entry)) {
        json_t *fields = verify_fields(in);
        const json_t *messages = json_object_get(fields, "messages");
        const size_t n = json_array_size(messages);
        const char *said =
            n ? json_string_value(json_object_get(json_array_get(messages, n - 1), "content")) : in->prompt;
        TextBuffer block = {0};
        const bool found = code_extract(verify_span(said), "python", CODE_LAST, n > 0, &block);
        if (found) text_format(all, "%s\n", block.text);
        text_free(&block);
        json_decref(fields);
    }
    text_append(all, code->text, code->length);
}

/* Begins, or begins again with the tests that are left. */
static inline void code_slot_begin(CodeJudge *j, CodeSlot *s) {
    const CodeRow *r = s->row;
    const double left = j->o.total - s->elapsed;
    const bool program = r->form == CODE_OUTPUTS || r->form == CODE_COMMAND;
    json_t *source = json_utf8(s->code.text, s->code.length), *request = json_object();
    json_object_set_new(request, "mode", json_string(program ? "program" : "calls"));
    if (r->form == CODE_COMMAND) {
        json_t *files = json_copy(r->files);
        json_object_set(files, r->c ? "solution.c" : "solution.py", source);
        json_object_set_new(request, "language", json_string("command"));
        json_object_set(request, "run", r->run);
        json_object_set_new(request, "files", files);
    } else {
        if (program) json_object_set_new(request, "language", json_string(r->c ? "c" : "python"));
        else {
            json_object_set_new(request, "setup", json_string(r->setup));
            json_object_set_new(request, "after", json_string(r->after));
        }
        json_object_set(request, "source", source);
    }
    json_decref(source);
    s->loading = true;
    s->sent = 0;
    sandbox_begin(&j->sandbox, &s->session, request, left + (r->c ? SANDBOX_COMPILES : 0));
    json_decref(request);
}

/* Sends the next test. A weak test comes with its secret. */
static inline void code_slot_send(CodeSlot *s) {
    const json_t *test = json_array_get(s->row->tests, (size_t)s->test);
    static const char *const sent[] = {"call", "args", "eval", "check", "input"};
    json_t *step = json_object();
    for (size_t i = 0; i < sizeof sent / sizeof *sent; i++) {
        json_t *value = json_object_get(test, sent[i]);
        if (value) json_object_set(step, sent[i], value);
    }
    if (json_object_get(test, "check")) {
        unsigned char random[16];
        if (getrandom(random, sizeof random, 0) != sizeof random) memset(random, 0, sizeof random);
        for (int i = 0; i < 16; i++) sprintf(s->secret + 2 * i, "%02x", random[i]);
        json_object_set_new(step, "secret", json_string(s->secret));
    }
    s->loading = false;
    s->sent = clock_seconds();
    sandbox_send(&s->session, step);
}

/* The outcome of a reply to the present test. */
static inline SandboxOutcome code_slot_outcome(const CodeJudge *j, const CodeSlot *s) {
    const json_t *test = json_array_get(s->row->tests, (size_t)s->test), *reply = s->session.reply, *want;
    const CodeCompare exact = {0}, loose = {.tolerance = j->o.tolerance, .loose = true};
    const SandboxOutcome named = sandbox_outcome(reply);
    if (named != SANDBOX_OUTCOMES) return named;
    if ((want = json_object_get(test, "output"))) {
        int status;
        const TextSlice *out = s->session.blocks;
        const SandboxOutcome end = sandbox_outcome_of_end(reply, out[1], &status);
        if (end != SANDBOX_PASS) return end;
        return code_output_equal((VerifySpan){out->text, out->length}, verify_field(want), j->o.tolerance)
                   ? SANDBOX_PASS
                   : SANDBOX_WRONG;
    }
    if (json_object_get(test, "input")) {
        int status;
        return sandbox_outcome_of_end(reply, s->session.blocks[1], &status) == SANDBOX_PASS ? SANDBOX_PASS
                                                                                            : SANDBOX_WRONG;
    }
    if (json_object_get(test, "check")) {
        const char *secret = json_string_value(json_object_get(reply, "secret"));
        const bool ok =
            secret && !strcmp(secret, s->secret) && json_integer_value(json_object_get(reply, "asserts")) > 0;
        return ok ? SANDBOX_PASS : SANDBOX_ERROR;
    }
    const json_t *got = json_object_get(reply, "value");
    if (!got) return SANDBOX_ERROR;
    if (!json_object_get(test, "call")) return code_value_passes(got, test, &exact) ? SANDBOX_PASS : SANDBOX_WRONG;
    want = json_object_get(test, "value");
    const json_t *inner = code_tag_of(want) == 'l' ? code_content(want) : NULL; /* APPS has the result in a list */
    const bool ok = code_value_equal(got, want, &loose) ||
                    (json_array_size(inner) == 1 && code_value_equal(got, json_array_get(inner, 0), &loose));
    return ok ? SANDBOX_PASS : SANDBOX_WRONG;
}

/* Ends the session, and adds its time. */
static inline void code_slot_end(CodeJudge *j, CodeSlot *s) {
    if (s->session.started) s->elapsed += clock_seconds() - s->session.begin;
    sandbox_end(&j->sandbox, &s->session);
}

static inline void code_slot_finish(CodeJudge *j, CodeSlot *s) {
    code_slot_end(j, s);
    s->v.seconds = s->elapsed;
    text_free(&s->code);
}

/* Records the outcome of the present test. ended: the session is over. stop: the first failure ends the completion. Returns
 * whether the completion is done. */
static inline bool code_slot_next(CodeJudge *j, CodeSlot *s, SandboxOutcome outcome, bool ended, bool stop) {
    s->v.run++;
    if (outcome == SANDBOX_PASS) s->v.passed++;
    else if (s->v.outcome == SANDBOX_PASS) s->v.outcome = outcome;
    s->test++;
    if (s->test == s->tests || (stop && outcome != SANDBOX_PASS)) return true;
    const double used = s->elapsed + (s->session.started ? clock_seconds() - s->session.begin : 0);
    if (used >= j->o.total) { /* the tests that are left do not pass */
        if (s->v.outcome == SANDBOX_PASS) s->v.outcome = SANDBOX_TIMEOUT;
        return true;
    }
    if (!ended) {
        code_slot_send(s);
        return false;
    }
    code_slot_end(j, s);
    code_slot_begin(j, s);
    return false;
}

/* The program cannot be loaded: every test that is left fails with this outcome. */
static inline bool code_slot_refuse(CodeSlot *s, SandboxOutcome outcome) {
    if (s->v.outcome == SANDBOX_PASS) s->v.outcome = outcome;
    return true;
}

/* The sandbox failed: a second try, then a verdict without a reward. */
static inline bool code_slot_broken(CodeJudge *j, CodeSlot *s) {
    j->failure = s->session.failure;
    if (s->retried) {
        s->v.outcome = SANDBOX_FAILED;
        s->v.unscorable = true;
        return true;
    }
    s->retried = true;
    code_slot_end(j, s);
    code_slot_begin(j, s);
    return false;
}

/* Goes on with a completion as far as it can without waiting; returns whether it is done. */
static inline bool code_slot_step(CodeJudge *j, CodeSlot *s, bool stop) {
    for (;;) {
        const bool loading = s->loading;
        const SandboxEvent event = sandbox_serve(&s->session);
        if (s->session.started && !s->sent) s->sent = s->session.begin;
        switch (event) {
        case SANDBOX_BROKEN:
            if (code_slot_broken(j, s)) return true;
            continue;
        case SANDBOX_WAIT: {
            const double most = j->o.timeout + (loading && s->row->c ? SANDBOX_COMPILES : 0);
            if (!s->session.started || clock_seconds() < s->sent + most) return false;
        } /* fall through */
        case SANDBOX_LATE:
            if (loading) return code_slot_refuse(s, s->row->c ? SANDBOX_COMPILE : SANDBOX_TIMEOUT);
            if (code_slot_next(j, s, SANDBOX_TIMEOUT, true, stop)) return true;
            continue;
        case SANDBOX_FLOOD:
        case SANDBOX_ENDED: {
            const SandboxOutcome outcome = event == SANDBOX_FLOOD ? SANDBOX_OUTPUT_LIMIT : SANDBOX_ERROR;
            if (loading) return code_slot_refuse(s, outcome);
            if (code_slot_next(j, s, outcome, true, stop)) return true;
            continue;
        }
        case SANDBOX_REPLY: break;
        }
        if (loading) {
            const char *outcome = json_string_value(json_object_get(s->session.reply, "outcome"));
            if (!outcome || strcmp(outcome, "ready")) {
                const SandboxOutcome named = sandbox_outcome(s->session.reply);
                return code_slot_refuse(s, named == SANDBOX_OUTCOMES ? SANDBOX_ERROR : named);
            }
            code_slot_send(s);
            continue;
        }
        const SandboxOutcome outcome = code_slot_outcome(j, s);
        if (code_slot_next(j, s, outcome, outcome == SANDBOX_OUTPUT_LIMIT, stop)) return true;
    }
}

/* ---- many completions ---------------------------------------------------------------------------------------------- */

/* Adds a verdict to the counts. */
static inline void code_count(CodeJudge *j, const CodeVerdict *v, bool timed) {
    j->counts.outcome[v->outcome] += !v->unscorable || v->outcome == SANDBOX_FAILED;
    j->counts.unscorable += v->unscorable && v->outcome != SANDBOX_FAILED;
    j->counts.tests += v->run;
    if (!timed) return;
    if (j->timed == j->timed_capacity) {
        j->timed_capacity = 2 * j->timed_capacity + 64;
        j->seconds = (double *)xrealloc(j->seconds, j->timed_capacity, sizeof *j->seconds);
    }
    j->seconds[j->timed++] = v->seconds;
}

/* Prepares a completion: fills in its job, whose verdict is final if it has no program to run. */
static inline void code_prepare(CodeJudge *j, CodeSlot *s, const RewardInput *in, const CodeRow *r, bool stop) {
    TextBuffer code = {0};
    *s = (CodeSlot){.first = -1, .row = r, .tests = (int)json_array_size(r->tests)};
    if (j->o.most && s->tests > j->o.most) s->tests = (int)j->o.most;
    s->v = (CodeVerdict){.outcome = SANDBOX_PASS, .tests = s->tests, .unscorable = r->why != NULL};
    if (r->why) return;
    if (!code_extract(verify_completion(in), r->c ? "c" : "python", (CodeExtract)j->o.extract, j->o.fence, &code)) {
        s->v.outcome = SANDBOX_NO_CODE;
    } else {
        code_program(in, r, &code, &s->code);
        s->key = (XXH64(s->code.text, s->code.length, r->hash) & ~(uint64_t)1) | (stop ? 1 : 0);
        const CodeMemo *memo = &j->memo[s->key % CODE_MEMO];
        if (memo->key == s->key) {
            s->v = memo->verdict;
            text_free(&s->code);
        }
    }
    text_free(&code);
}

/* Runs the jobs that have a program and are not the same as an earlier one. */
static inline void code_run(CodeJudge *j, CodeSlot *job, int n, bool stop) {
    const int W = (int)j->sandbox.o.workers;
    int *slot = (int *)xmalloc((size_t)W * sizeof *slot), at = 0, running = 0;
    struct pollfd *files = (struct pollfd *)xcalloc(3 * (size_t)W, sizeof *files);
    for (int k = 0; k < W; k++) slot[k] = -1;
    for (;;) {
        for (int k = 0; k < W; k++) {
            while (slot[k] < 0 && at < n && (!job[at].code.length || job[at].first >= 0)) at++;
            if (slot[k] < 0 && at < n) {
                slot[k] = at++;
                running++;
                code_slot_begin(j, &job[slot[k]]);
            }
            for (int f = 0; f < 3; f++) files[3 * k + f] = (struct pollfd){.fd = -1};
            if (slot[k] >= 0) sandbox_process_files(&job[slot[k]].session.worker.process, files + 3 * k);
        }
        if (!running) break;
        poll(files, 3 * (nfds_t)W, 10);
        for (int k = 0; k < W; k++) {
            if (slot[k] < 0 || !code_slot_step(j, &job[slot[k]], stop)) continue;
            code_slot_finish(j, &job[slot[k]]);
            slot[k] = -1;
            running--;
        }
    }
    free(slot), free(files);
}

/* Runs the tests of n completions. stop: the first test that does not pass ends a completion, and `passed` counts those before
 * it. Fails only if the sandbox failed while it translated the tests. */
static inline bool code_judge_score(CodeJudge *j, const RewardInput *in, int n, bool stop, CodeVerdict *out, Error *e) {
    const int64_t misses = j->sandbox.misses;
    for (int i = 0; i < n; i++) /* before a row's address is taken */
        if (!code_judge_row(j, &in[i], e)) return false;
    CodeSlot *job = (CodeSlot *)xcalloc((size_t)n + 1, sizeof *job);
    for (int i = 0; i < n; i++) {
        code_prepare(j, &job[i], &in[i], code_judge_row(j, &in[i], e), stop);
        for (int k = 0; job[i].code.length && job[i].first < 0 && k < i; k++)
            if (job[k].code.length && job[k].key == job[i].key) job[i].first = k;
    }
    bool *ran = (bool *)xcalloc((size_t)n + 1, sizeof *ran);
    for (int i = 0; i < n; i++) ran[i] = job[i].code.length && job[i].first < 0;
    code_run(j, job, n, stop);
    for (int i = 0; i < n; i++) {
        const SandboxOutcome outcome = job[i].v.outcome;
        if (job[i].first >= 0) job[i].v = job[job[i].first].v;
        else if (ran[i] && outcome != SANDBOX_TIMEOUT && outcome != SANDBOX_MEMORY && outcome != SANDBOX_FAILED)
            j->memo[job[i].key % CODE_MEMO] = (CodeMemo){job[i].key, job[i].v};
        text_free(&job[i].code);
        out[i] = job[i].v;
        code_count(j, &out[i], ran[i]);
    }
    j->counts.misses += (double)(j->sandbox.misses - misses);
    free(job), free(ran);
    return true;
}

/* code_judge_score() as the function of a CodeScorer. */
static inline bool code_judge_scorer(CodeScorer *scorer, const RewardInput *in, int n, bool stop, CodeVerdict *out,
                                     Error *e) {
    return code_judge_score((CodeJudge *)scorer, in, n, stop, out, e);
}

#endif
