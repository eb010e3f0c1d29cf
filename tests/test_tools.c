/* test_tools.c - tools: the calculator against exact values; the search against BM25 in a plain loop, and hostile queries;
 * calls as every format writes them, and malformed ones; arguments against schemas; runs of the programs with tools.
 *
 * The model is made here. Needs ./train_sft, ./train_grpo, ./generate, data/make_corpus, data/show and data/make_tasks. */
#include "../llmc/base/error.h"         /* Error, xstrdup */
#include "../llmc/base/text.h"          /* text_free, TextBuffer, text_format, text_string, ... */
#include "../llmc/reward/task_tools.h"  /* task_lookup_result */
#include "../llmc/sandbox/sandbox.h"    /* sandbox_defaults */
#include "../llmc/tools/calculator.h"   /* calculator */
#include "../llmc/tools/code_tool.h"    /* CodeTool, code_tool_begin, CodeToolOptions, code_tool_close, ... */
#include "../llmc/tools/search.h"       /* SEARCH_NONE, search_run, search_open, Search, ... */
#include "../llmc/tools/tool_format.h"  /* ToolCalls, ToolFormat, tool_format_open, tool_format_free, ... */
#include "../llmc/tools/tool_program.h" /* ToolReply */
#include "../llmc/tools/tools.h"        /* tools_add, Tools, tools_free, TOOL_CALCULATOR, ... */
#include "files.h"                      /* files_path, text_of, occurrences, files_directory, ... */
#include "rows.h"                       /* rows_unread */
#include "run.h"                        /* metric */
#include "shell.h"                      /* assert_holds, run, out, refused_output, ... */

/* ---- the calculator -------------------------------------------------------------------------------------------- */

/* Values of Python: eval(text), or '%.15g' of it if it is not a whole number or a short decimal. */
static void test_calculator(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"123456789*987654321", "121932631112635269"},
        {"1/3+0.5", "0.833333333333333"},
        {"-2**2", "-4"},
        {"2**3**2", "512"},
        {"7//-2", "-4"},
        {"-7%3", "2"},
        {"7%-3", "-2"},
        {"5.5%2", "1.5"},
        {"2**-3", "0.125"},
        {"0.1+0.2", "0.3"},
        {"1/3*10**20", "3.33333333333333e+19"},
        {"1/3/10**4", "3.33333333333333e-05"},
        {"-1/30", "-0.0333333333333333"},
        {"2/3", "0.666666666666667"},
        {"10**15/3", "333333333333333"},
        {" ( 1 + 2 ) * 3 ", "9"},
        {"--3", "3"},
        {"5.", "5"},
        {".5", "0.5"},
        {"2*-3", "-6"},
        {"1/2**20", "0.00000095367431640625"},
        {"99999999999999.96/3*3", "99999999999999.96"},
        {"-0*5", "0"},
    };
    TextBuffer r = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!calculator(cases[i][0], strlen(cases[i][0]), &r)) fail_msg("%s: %s", cases[i][0], r.text);
        assert_string_equal(r.text, cases[i][1]);
    }
    static const char *const bad[][2] = {{"", "syntax: the expression ends too early"},
                                         {"(1+2", "syntax: the expression ends too early"},
                                         {"1+*2", "syntax: unexpected character at byte 2"},
                                         {"3 + 4)", "syntax: unexpected character at byte 5"},
                                         {"x", "syntax: unexpected character at byte 0"},
                                         {"1e5", "syntax: unexpected character at byte 1"},
                                         {"1/0", "division by zero"},
                                         {"1//0", "division by zero"},
                                         {"1%0", "division by zero"},
                                         {"0**-1", "division by zero"},
                                         {"2**10000", "an exponent must be a whole number of at most 4 digits"},
                                         {"2**0.5", "an exponent must be a whole number of at most 4 digits"},
                                         {"9**9999", "the result is too large"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (calculator(bad[i][0], strlen(bad[i][0]), &r)) fail_msg("%s = %s", bad[i][0], r.text);
        assert_string_equal(r.text, bad[i][1]);
    }
    char deep[300];
    memset(deep, '(', sizeof deep);
    assert_false(calculator(deep, 200, &r));
    assert_string_equal(r.text, "the expression is nested too deeply");
    memset(deep, '-', sizeof deep);
    assert_false(calculator(deep, 256, &r));
    assert_string_equal(r.text, "the expression is nested too deeply");
    assert_false(calculator(deep, 257, &r));
    assert_string_equal(r.text, "the expression has more than 256 bytes");
    text_free(&r);
}

/* ---- search ---------------------------------------------------------------------------------------------------- */

enum { PASSAGES = 40, TITLE_WORDS = 2, TEXT_WORDS = 12, VOCABULARY = 9 };

/* Word number w: no two have the same stem. */
static const char *corpus_word(int w) {
    static const char *const words[VOCABULARY] = {"ox", "cat", "emu", "fly", "gnu", "hen", "owl", "pig", "ram"};
    return words[w];
}

static uint32_t next_random(uint32_t *state) { return (*state = *state * 1664525 + 1013904223) >> 8; }

/* SQLite's documentation of bm25(): the sum over the words of the query of idf f (k1 + 1) / (f + k1 (1 - b + b D / avgdl)),
 * with k1 = 1.2, b = 0.75, idf = ln((N - n + 0.5) / (n + 0.5)) but at least 1e-6, f the weighted occurrences, D all words. */
static double bm25(int passage[PASSAGES][TITLE_WORDS + TEXT_WORDS], const int *length, int i, const int *query, int n) {
    double score = 0, mean = 0;
    for (int k = 0; k < PASSAGES; k++) mean += length[k] / (double)PASSAGES;
    for (int q = 0; q < n; q++) {
        double f = 0, with = 0;
        for (int k = 0; k < PASSAGES; k++) {
            bool has = false;
            for (int w = 0; w < length[k]; w++) has = has || passage[k][w] == query[q];
            with += has;
        }
        for (int w = 0; w < length[i]; w++)
            if (passage[i][w] == query[q]) f += w < TITLE_WORDS ? 2 : 1;
        const double idf = fmax(log((PASSAGES - with + 0.5) / (with + 0.5)), 1e-6);
        score += idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * length[i] / mean));
    }
    return score;
}

/* Random passages and queries: the passages that are found, and their order. */
static void test_search_order(void **state) {
    (void)state;
    Error e;
    static int passage[PASSAGES][TITLE_WORDS + TEXT_WORDS];
    int length[PASSAGES];
    uint32_t r = 7;
    TextBuffer lines = {0}, query = {0}, wanted = {0}, got = {0};
    for (int i = 0; i < PASSAGES; i++) {
        length[i] = TITLE_WORDS + 1 + (int)(next_random(&r) % TEXT_WORDS);
        text_string(&lines, "{\"title\":\"");
        for (int w = 0; w < length[i]; w++) {
            passage[i][w] = (int)(next_random(&r) % VOCABULARY);
            text_format(&lines, "%s%s", w == TITLE_WORDS ? "\",\"text\":\"" : w ? " " : "", corpus_word(passage[i][w]));
        }
        text_string(&lines, "\"}\n");
    }
    put("animals.jsonl", lines.text);
    run(0, "./data/make_corpus -i $T/animals.jsonl -o $T/animals.db && "
           "gzip <$T/animals.jsonl | ./data/make_corpus -i - -o $T/again.db && cmp $T/animals.db $T/again.db");
    Search *s = search_open(files_path("animals.db"), &e);
    if (!s) fail_msg("%s", e.text);
    for (int k = 0; k < 60; k++) {
        int words[3], n = 1 + k % 3, top = 1 + k % 7;
        bool taken[PASSAGES] = {0};
        text_clear(&query), text_clear(&wanted);
        for (int q = 0; q < n; q++) {
            words[q] = (int)(next_random(&r) % VOCABULARY);
            text_format(&query, "%s%s", q ? ", " : "", corpus_word(words[q]));
        }
        for (int found = 1; found <= top; found++) {
            int best = -1;
            double most = 0;
            for (int i = 0; i < PASSAGES; i++) {
                const double score = taken[i] ? 0 : bm25(passage, length, i, words, n);
                if (score > most * (1 + 1e-9)) best = i, most = score;
            }
            if (best < 0) break;
            taken[best] = true;
            text_format(&wanted, "Doc %d(Title: ", found);
            for (int w = 0; w < length[best]; w++)
                text_format(&wanted, "%s%s", w == TITLE_WORDS ? ") " : w ? " " : "", corpus_word(passage[best][w]));
            text_string(&wanted, "\n");
        }
        if (!search_run(s, query.text, query.length, top, &got, &e)) fail_msg("%s", e.text);
        assert_string_equal(got.text, wanted.text);
    }
    search_close(s);
    text_free(&lines), text_free(&query), text_free(&wanted), text_free(&got);
}

/* What FTS5 would read as operators are words, and what is no word finds nothing. */
static void test_search_queries(void **state) {
    (void)state;
    Error e;
    put("docs.jsonl", "{\"title\":\"Caf\u00e9\",\"text\":\"Running costs: and 42 naive \\\"quotes\\\"\"}\n"
                      "{\"contents\":\"\\\"Ada\\\"\\nThe first program\"}\n");
    run(0, "./data/make_corpus -i $T/docs.jsonl -o $T/'a %41?#b.db' && chmod 444 $T/*.db");
    static const char cafe[] = "Doc 1(Title: Caf\xc3\xa9) Running costs: and 42 naive \"quotes\"\n",
                      ada[] = "Doc 1(Title: \"Ada\") The first program\n";
    static const struct {
        const char *query;
        size_t n; /* 0: the length of the text */
        const char *result;
    } cases[] = {{"cafe", 0, cafe},
                 {"CAFE\xcc\x81", 0, cafe},
                 {"ran run runs", 0, cafe},
                 {"AND", 0, cafe},
                 {"na\xc3\xafve", 0, cafe},
                 {"\"quotes", 0, cafe},
                 {"quotes*", 0, cafe},
                 {"NOT 42", 0, cafe},
                 {"ada\0OR x", 8, ada},
                 {"\xff\xc3 ada \xed\xa0\x80", 0, ada},
                 {"title:ada", 0, ada},
                 {"text:title", 0, SEARCH_NONE},
                 {"qu*", 0, SEARCH_NONE},
                 {"", 0, SEARCH_NONE},
                 {"\"", 0, SEARCH_NONE},
                 {"\0", 1, SEARCH_NONE},
                 {"NEAR(", 0, SEARCH_NONE},
                 {"^ - + : {} () ' ; -- /* OR", 0, SEARCH_NONE},
                 {"x'; DROP TABLE docs; --", 0, SEARCH_NONE},
                 {"\xf0\x9f\x98\x80", 0, SEARCH_NONE},                 /* an emoji */
                 {"\xf0\x91\xbd\x90\xf0\x91\xbd\x91", 0, SEARCH_NONE}, /* digits that are no token of FTS5's Unicode */
                 {"\xf0\x91\xbd\x90 ada", 0, ada}};
    TextBuffer got = {0};
    Search *s = search_open(files_path("a %41?#b.db"), &e);
    if (!s) fail_msg("%s", e.text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t n = cases[i].n ? cases[i].n : strlen(cases[i].query);
        if (!search_run(s, cases[i].query, n, 3, &got, &e)) fail_msg("%s: %s", cases[i].query, e.text);
        assert_string_equal(got.text, cases[i].result);
    }
    /* 1 MiB of one letter, and of words of which only the first 32 are read */
    TextBuffer large = {0};
    for (int i = 0; i < 1 << 20; i++) text_string(&large, "a");
    assert_true(search_run(s, large.text, large.length, 3, &got, &e));
    assert_string_equal(got.text, SEARCH_NONE);
    text_clear(&large);
    for (int i = 0; i < 1 << 16; i++) text_string(&large, i == 32 ? "ada " : "zebra quagga ");
    assert_true(search_run(s, large.text, large.length, 3, &got, &e));
    assert_string_equal(got.text, SEARCH_NONE);
    text_clear(&large);
    for (int i = 0; i < 1 << 16; i++) text_string(&large, i == 31 ? "ada " : "zebra ");
    assert_true(search_run(s, large.text, large.length, 3, &got, &e));
    assert_string_equal(got.text, ada);
    text_free(&large);
    search_close(s);
    text_free(&got);
    run(0, "ls $T | grep -c 'a %41?#b'");
    assert_string_equal(out, "1\n"); /* nothing was written next to it */
    /* the tool: its arguments */
    Tools t = {0};
    const json_t *many = json_pack("{s:s,s:i}", "query", "ada", "top_k", 21);
    assert_false(tools_add(&t, "search", &e));
    assert_holds(e.text, "search: give the corpus: search=FILE");
    char spec[300];
    snprintf(spec, sizeof spec, "search=%s", files_path("a %41?#b.db"));
    assert_true(tools_add(&t, spec, &e));
    assert_int_equal(tool_run(&t.tool[0], many, &got, &e), TOOL_WRONG);
    assert_string_equal(got.text, "top_k must be from 1 to 20");
    assert_false(tools_add(&t, spec, &e));
    assert_string_equal(e.text, "tool search: there are two of this name");
    text_free(&got);
    json_decref((json_t *)many);
    tools_free(&t);
}

/* Passages of documents; files that are no corpus. */
static void test_corpus(void **state) {
    (void)state;
    put("numbers.jsonl", "{\"title\":\"N\",\"text\":\" 1 2\\t3 4\\n5 6 7 \",\"id\":3,\"url\":\"u\"}\n");
    run(0,
        "./data/make_corpus -i $T/numbers.jsonl -o $T/n.db --chunk-words 3 --overlap 1 2>&1 && ./data/show --all $T/n.db");
    assert_holds(out, "1 documents, 3 passages | fields that are not stored: id, url");
    assert_holds(out, "passages: 3, titles: 1, bytes of text: 15\n"
                      "-- passage 0: N\n1 2\t3\n-- passage 1: N\n3 4\n5\n-- passage 2: N\n5 6 7\n");
    run(0, "./data/make_corpus -i $T/numbers.jsonl -o $T/n.db --chunk-words 0 && ./data/show --json $T/n.db");
    assert_string_equal(out, "{\"title\":\"N\",\"text\":\"1 2\\t3 4\\n5 6 7\"}\n");
    put("twice.jsonl", "{\"id\":1,\"text\":\"a\"}\n{\"id\":1,\"text\":\"b\"}\n");
    static const char *const bad[][2] = {
        {"./data/make_corpus -i $T/twice.jsonl -o $T/new.db",
         "line 2: field 'id': an earlier document has the same id"},
        {"echo '{\"text\":\" \"}' | ./data/make_corpus -i - -o $T/new.db", "line 1: field 'text': has no word of text"},
        {"echo '{\"title\":\"a\"}' | ./data/make_corpus -i - -o $T/new.db", "line 1: has no field 'text'"},
        {"echo '{\"text\":3}' | ./data/make_corpus -i - -o $T/new.db", "field 'text': is a number, expected a string"},
        {"./data/make_corpus -i /dev/null -o $T/new.db", "there is no document in the input"},
        {"./data/show $T/cut.db", "cut.db: the corpus is cut off: "},
        {"./data/show $T/short.db", "short.db: the corpus is cut off after 20 bytes"},
        {"./data/show $T/other.db", "an SQLite database, but no corpus"},
        {"cat $T/n.db | ./data/show -", "a corpus is read in place; give the name of its file"}};
    run(0,
        "head -c 5000 $T/n.db >$T/cut.db; head -c 20 $T/n.db >$T/short.db; sed 's/fts5(title/fts5(titel/' $T/n.db >$T/other.db");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) refused_output("new.db", 1, bad[i][0], bad[i][1]);
    run(0,
        "mkdir -p $T/parts && head -n 1 $T/numbers.jsonl >$T/parts/a.jsonl && tail -n +2 $T/numbers.jsonl >$T/parts/b.jsonl && "
        "./data/make_corpus -i \"$T/parts/*.jsonl\" -o $T/parts.db --chunk-words 0 && cmp $T/parts.db $T/n.db");
    refused_output("new.db", 2, "./data/make_corpus -i $T/numbers.jsonl -i $T/./numbers.jsonl -o $T/new.db",
                   "are the same file");
    refused_output("new.db", 2, "./data/make_corpus -i $T/numbers.jsonl:3 -o $T/new.db", "is for training data only");
    refused_output("new.db", 2, "./data/make_corpus -i $T/twice.jsonl -o $T/new.db --chunk-words 3 --overlap 3",
                   "--overlap must be below --chunk-words");
    Error e;
    static const char *const files[][2] = {{"numbers.jsonl", "is no corpus; data/make_corpus makes one"},
                                           {"nothing.db", "cannot open: No such file or directory"},
                                           {".", "is not a regular file"}};
    for (size_t i = 0; i < 3; i++) {
        assert_null(search_open(files_path(files[i][0]), &e));
        assert_holds(e.text, files[i][1]);
    }
}

/* What demonstrations of lookup show is what the tool finds. */
static void test_lookup(void **state) {
    (void)state;
    Error e;
    TextBuffer shown = {0}, found = {0};
    run(0,
        "./data/make_tasks --task lookup --largest 60 --seed 5 --count 20 --corpus-output $T/facts.jsonl -o /dev/null && "
        "./data/make_corpus -i $T/facts.jsonl -o $T/facts.db");
    Search *s = search_open(files_path("facts.db"), &e);
    if (!s) fail_msg("%s", e.text);
    int several = 0;
    for (int64_t key = 0; key < 60; key++) {
        char query[16];
        const int n = snprintf(query, sizeof query, "k%lld", (long long)key);
        text_clear(&shown);
        task_lookup_result(5, 60, key, &shown);
        assert_true(search_run(s, query, (size_t)n, SEARCH_TOP, &found, &e));
        assert_string_equal(shown.text, found.text);
        several += strstr(shown.text, "Doc 3(") != NULL;
    }
    assert_in_range(several, 5, 40);
    search_close(s);
    text_free(&shown), text_free(&found);
    refused_output("facts.jsonl", 2, "./data/make_tasks --task add --corpus-output $T/facts.jsonl",
                   "--corpus-output: used only for the task lookup");
    refused_output("same.jsonl", 2, "./data/make_tasks --task lookup --corpus-output $T/same.jsonl -o $T/same.jsonl",
                   "both are ");
}

/* ---- programs that the model writes ----------------------------------------------------------------------------- */

/* Runs programs at the same time; writes the result of each to result[]. */
static void run_code(CodeTool *c, const char *const (*program)[2], int n, json_t **result) {
    Error e;
    ToolReply reply;
    for (int i = 0; i < n; i++) code_tool_begin(c, program[i][0], program[i][1], NULL, i);
    for (int left = n; left; left--) {
        while (!code_tool_next(c, &reply, &e)) code_tool_wait(c, 0.1);
        if (!reply.value) fail_msg("%s", e.text);
        result[reply.tag] = reply.value;
    }
}

static void test_code(void **state) {
    (void)state;
    static const char *const programs[][2] = {
        {"python", "print(6 * 7)"},
        {"python", "import sys\nprint('a', end='')\nprint('b', file=sys.stderr)"},
        {"python", "print('a')\nraise SystemExit(3)"},
        {"python", "print(1 / 0)"},
        {"python", "print(("},
        {"python", "while True: pass"},
        {"python", "print('x' * (3 << 20))"},
        {"python", "x = [0] * (1 << 28)"},
        {"python", "import os; os.kill(os.getpid(), 11)"},
        {"python", "print(input())"},
        {"python", "import sys; sys.stdout.buffer.write(b'\\xff\\0')"},
        {"python", ""},
        {"python", "print(object(), open)"},
        {"python", "print(object(), open)"},
        {"c", "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 6 * 7); return 0; }"},
        {"c", "int main(void) { return x; }"},
        {"c", "int main(void) { int *p = 0; return *p; }"},
    };
    /* the whole result, or a part of it; NULL: compared below */
    static const char *const wanted[][2] = {{"42\n", ""},
                                            {"a\nb\n", ""},
                                            {"a\nexit status 3", ""},
                                            {NULL, "ZeroDivisionError: division by zero\nexit status 1"},
                                            {NULL, "SyntaxError"},
                                            {"the program did not end within 0.5 seconds", ""},
                                            {NULL, "the program wrote more than 1 MiB"},
                                            {NULL, "the program used more than 256 MiB of memory"},
                                            {"ended by signal 11 (Segmentation fault)", ""},
                                            {NULL, "EOFError"},
                                            {NULL, ""},
                                            {"", ""},
                                            {NULL, "<object object at 0x"},
                                            {NULL, "<object object at 0x"},
                                            {"42\n", ""},
                                            {NULL, "the program cannot be compiled"},
                                            {"ended by signal 11 (Segmentation fault)", ""}};
    enum { N = sizeof programs / sizeof *programs };
    Error e;
    CodeTool c;
    CodeToolOptions o = {.sandbox = sandbox_defaults(), .timeout = 0.5};
    json_t *result[N];
    o.sandbox.workers = 3;
    o.sandbox.memory = 256;
    if (!code_tool_open(&c, &o, &e)) {
        print_message("test_tools: skipped, because this machine refuses it: %s\n", e.text);
        skip();
    }
    run_code(&c, programs, N, result);
    for (int i = 0; i < N; i++) {
        const char *content = json_string_value(json_object_get(result[i], "content"));
        if (wanted[i][0] ? strcmp(content, wanted[i][0]) != 0 : !strstr(content, wanted[i][1]))
            fail_msg("program %d: '%.500s'", i, content);
        const bool fine = i < 2 || (i > 9 && i < 15);
        assert_int_equal(json_is_true(json_object_get(result[i], "error")), !fine);
    }
    assert_true(json_equal(result[12], result[13])); /* addresses are the same in every run */
    for (int i = 0; i < N; i++) json_decref(result[i]);
    /* a call that nobody waits for does not keep the next one waiting */
    for (int i = 0; i < 9; i++) code_tool_begin(&c, "python", "while True: pass", &o, i);
    code_tool_forget(&c, &o);
    assert_int_equal(c.count, 0);
    run_code(&c, programs, 1, result);
    json_decref(result[0]);
    /* a sandbox that breaks is no result; interpreters that have started already still work */
    free(c.sandbox.bwrap);
    c.sandbox.bwrap = xstrdup("/bin/false");
    ToolReply reply = {.value = json_null()};
    for (int i = 0; i < 9 && reply.value; i++) {
        code_tool_begin(&c, "python", "print(1)", NULL, 5);
        while (!code_tool_next(&c, &reply, &e)) code_tool_wait(&c, 0.1);
        json_decref(reply.value);
    }
    assert_null(reply.value);
    assert_int_equal(reply.tag, 5);
    assert_holds(e.text, "sandbox: bwrap: did not start");
    code_tool_close(&c);
}

/* ---- formats --------------------------------------------------------------------------------------------------- */

/* Reads a turn; writes its calls as NAME ARGUMENTS; or !ERROR; */
static char *read_calls(const char *spec, const char *text, ToolCalls *calls) {
    static char line[2000];
    Error e;
    ToolFormat f;
    Tools t = {0};
    assert_true(tools_add(&t, "calculator", &e));
    if (!tool_format_open(&f, spec, &e)) fail_msg("%s", e.text);
    if (f.kind == TOOL_TAGS) assert_true(tool_format_tool(&f, "calculator", t.tool[0].schema, &e));
    tool_format_read(&f, text, strlen(text), calls);
    *line = 0;
    for (int i = 0; i < calls->count; i++) {
        const ToolCall *c = &calls->call[i];
        char *arguments = c->arguments ? json_dumps(c->arguments, JSON_COMPACT) : NULL;
        snprintf(line + strlen(line), sizeof line - strlen(line), "%s%s%s%s;", c->error ? "!" : c->name,
                 c->error ? "" : " ", c->error ? c->error : "", c->error ? "" : arguments);
        free(arguments);
    }
    tool_calls_free(calls);
    tool_format_free(&f);
    tools_free(&t);
    return line;
}

#define OWN "call=<c>{arguments}</c>;result=[{content}]"

static void test_formats(void **state) {
    (void)state;
    static const struct {
        const char *format, *text, *calls;
    } cases[] = {
        {"hermes", "no call at all", ""},
        {"hermes", "I call <tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call>", "a {\"x\":1};"},
        {"hermes",
         "<tool_call>{\"name\":\"a\",\"arguments\":{}}</tool_call><tool_call>{\"name\":\"b\",\"arguments\":{}}</tool_call>",
         "a {};b {};"},
        /* braces, closing marks and escapes inside of strings */
        {"hermes", "<tool_call>{\"name\":\"a\",\"arguments\":{\"x\":\"}</tool_call>{\\\"\"}}</tool_call>",
         "a {\"x\":\"}</tool_call>{\\\"\"};"},
        {"hermes", "<tool_call>{\"name\":\"a\",\"arguments\":\"{\\\"x\\\":2}\"}</tool_call>", "a {\"x\":2};"},
        {"hermes", "<tool_call>{\"name\":\"a\",\"arguments\":\"no\"}</tool_call>",
         "!the call of 'a' has no \"arguments\", an object;"},
        {"hermes", "<tool_call>{\"name\":\"a\"}</tool_call>", "!the call of 'a' has no \"arguments\", an object;"},
        {"hermes", "<tool_call>{\"arguments\":{}}</tool_call>", "!the call has no \"name\", a string;"},
        {"hermes", "<tool_call>{\"name\":7,\"arguments\":{}}</tool_call>", "!the call has no \"name\", a string;"},
        {"hermes", "<tool_call>[1]</tool_call>", "!the call has no \"name\", a string;"},
        {"hermes", "<tool_call>", "!a <tool_call> could not be read: nothing follows it;"},
        {"hermes", "<tool_call>{\"name\":\"a\",\"arguments\":{}}",
         "!a <tool_call> could not be read: no </tool_call> follows its JSON value;"},
        {"hermes", "<tool_call>{\"name\":\"a\",\"arguments\":{}} x</tool_call>",
         "!a <tool_call> could not be read: no </tool_call> follows its JSON value;"},
        {"llama3", "{\"name\": \"a\", \"parameters\": {\"x\": 1}}", "a {\"x\":1};"},
        {"llama3", " {\"name\": \"a\", \"arguments\": {\"x\": 1}} ", "a {\"x\":1};"},
        {"llama3", "the answer is {\"name\": 1}", ""},
        {"llama3", "{\"answer\": 5}", ""},
        {"llama3", "5", ""},
        {OWN, "<c>1+2</c>", "calculator {\"expression\":\"1+2\"};"},
        {OWN, "think <c> <c>1+2</c>x", "calculator {\"expression\":\"1+2\"};"},
        {OWN, "12", ""},
        {OWN, "<c>12", "!a <c> has no </c>;"},
        {"search-r1", "<think>hm</think><search> who </search>", "calculator {\"expression\":\" who \"};"},
        {"search-r1", "<answer> me </answer>", ""},
        {"search-r1", "<search> who", "!a <search> has no </search>;"},
        {"retool", "<code>\n```python\nprint(1)\n```\n</code>", "calculator {\"expression\":\"print(1)\\n\"};"},
        {"retool", "<code>print(1)</code>", "calculator {\"expression\":\"print(1)\"};"},
    };
    ToolCalls calls;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(read_calls(cases[i].format, cases[i].text, &calls), cases[i].calls);
    assert_non_null(strstr(read_calls("hermes", "<tool_call>{\"name\": a}</tool_call>", &calls),
                           "!a <tool_call> could not be read: "));
    assert_non_null(strstr(read_calls("llama3", "{\"name\": ", &calls), "!the call could not be read: "));
}

/* A model's own call is read as it was written. */
static void test_written_calls(void **state) {
    (void)state;
    static const char *const formats[] = {"hermes", "llama3", OWN};
    for (size_t i = 0; i < 3; i++) {
        Error e;
        ToolFormat f;
        ToolCalls calls;
        TextBuffer text = {0};
        json_t *arguments = json_pack("{s:s}", "expression", "1+\"2\"\xc3\xbc");
        assert_true(tool_format_open(&f, formats[i], &e));
        tool_format_call(&f, "calculator", arguments, &text);
        assert_string_equal(read_calls(formats[i], text.text, &calls),
                            "calculator {\"expression\":\"1+\\\"2\\\"\xc3\xbc\"};");
        text_free(&text);
        json_decref(arguments);
        tool_format_free(&f);
    }
}

static void test_format_errors(void **state) {
    (void)state;
    static const char *const bad[][2] = {
        {"xml", "unknown, must be hermes, llama3, search-r1, retool"},
        {"call=<c>;result={content}", "must be call=TEXT{arguments}TEXT"},
        {"call=<c>{arguments}</c>", "result=TEXT{content}TEXT is missing"},
        {"call={arguments}</c>;result={content}", "with a text before and after {arguments}"},
        {"call=<c>{arguments}</c>;result={content};end=!", "a turn must end where the call ends"},
        {"call=<c>{arguments}</c>;result={content};result={content}", "each once"},
        {"call=<c>{arguments}</c>;x", "has no '='"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Error e;
        ToolFormat f;
        assert_false(tool_format_open(&f, bad[i][0], &e));
        assert_holds(e.text, bad[i][1]);
    }
}

/* ---- arguments ------------------------------------------------------------------------------------------------- */

static void test_arguments(void **state) {
    (void)state;
    static const struct {
        const char *arguments, *why; /* NULL: accepted */
    } cases[] = {{"{\"n\":1,\"s\":\"a\"}", NULL},
                 {"{\"n\":1.0,\"s\":\"a\",\"other\":[]}", NULL},
                 {"{\"n\":1}", "argument 's' of f is missing"},
                 {"{\"n\":1.5,\"s\":\"a\"}", "argument 'n' must be of type integer"},
                 {"{\"n\":\"1\",\"s\":\"a\"}", "argument 'n' must be of type integer"},
                 {"{\"n\":1,\"s\":\"b\"}", "argument 's' is none of the values of its enum"},
                 {"{\"n\":1,\"s\":\"a\",\"l\":{}}", "argument 'l' must be of type listed in the schema"},
                 {"{\"n\":1,\"s\":\"a\",\"l\":null}", NULL}};
    Error e;
    Tools t = {0};
    TextBuffer why = {0};
    assert_true(tools_add_schema(
        &t, TOOL_CALCULATOR,
        json_loads(
            "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{"
            "\"n\":{\"type\":\"integer\"},\"s\":{\"type\":\"string\",\"enum\":[\"a\",\"c\"]},\"l\":{\"type\":"
            "[\"array\",\"null\"]}},\"required\":[\"n\",\"s\"]}}}",
            0, NULL),
        &e));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *arguments = json_loads(cases[i].arguments, 0, NULL);
        assert_int_equal(tool_check(&t.tool[0], arguments, &why), !cases[i].why);
        if (cases[i].why) assert_string_equal(why.text, cases[i].why);
        json_decref(arguments);
    }
    assert_false(tools_add_schema(&t, TOOL_CALCULATOR, json_incref(t.tool[0].schema), &e));
    assert_string_equal(e.text, "tool f: there are two of this name");
    assert_false(tools_add(&t, "abacus", &e));
    assert_holds(e.text, "tool 'abacus': unknown, must be calculator");
    text_free(&why);
    tools_free(&t);
}

/* ---- runs ------------------------------------------------------------------------------------------------------ */

#define FORMAT "--tool-format 'call=<c>{arguments}</c>;result=<r>{content}</r>'"
#define GRPO   "./train_grpo -c $T/sft.bin -i $T/tasks.shard -p 4 -G 4 -g 44 -x 2 -o $T/grpo.bin "

/* train_grpo with a calculator: samples with two turns, metrics, the same bytes for other slots; bad options. */
static void test_runs(void **state) {
    (void)state;
    run(0, "./data/make_tasks --task bigmul --digits 2 --count 500 --format chat " FORMAT " -o $T/sft.shard");
    run(0, "./data/make_tasks --task bigmul --digits 2 --count 100 --seed 2 -o $T/tasks.shard");
    run(0,
        "./train_sft --layers 1 --width 64 --heads 2 --context 64 -i $T/sft.shard -x 60 --batch-tokens 1024 -l 5e-3 -o $T/sft.bin");
    run(0, GRPO "--tools calculator " FORMAT " --metrics $T/m.jsonl");
    assert_holds(said, "= ... "); /* a prompt and the last of several turns */
    char *metrics = text_of(files_path("m.jsonl"));
    const char *turns = strstr(metrics, "\"turns/mean\":");
    assert_true(turns && strtod(turns + 13, NULL) > 1.2);
    const char *gap = strstr(metrics, "\"sampling/sampling_logp_difference/max\":");
    assert_true(gap && strtod(gap + 39, NULL) < 1e-4);
    free(metrics);
    refused_output("grpo.bin", 1, GRPO "--tools calculator",
                   "this model's chat template has no format of calls of its own; give --tool-format");
    refused_output("grpo.bin", 1, GRPO "--tools abacus " FORMAT,
                   "--tools: tool 'abacus': unknown, must be calculator, search=FILE, python, c");
    refused_output("grpo.bin", 1, GRPO "--tools calculator,calculator " FORMAT,
                   "tool calculator: there are two of this name");
    refused_output("grpo.bin", 2, GRPO "--max-turns 3", "--max-turns: used only with --tools");
    refused_output("grpo.bin", 2, GRPO "--tools calculator " FORMAT " --code-timeout 1",
                   "--code-timeout: used only for prompts of the task code");
    refused_output("grpo.bin", 1, GRPO "--tools calculator --tool-format llama3 --invalid-action-text no",
                   "--invalid-action-text: tool format llama3 has a result");
    refused_output("grpo.bin", 1, GRPO "--tools calculator " FORMAT " --max-prompt-length 4",
                   "prompts are longer than 4 tokens");
    refused_output("grpo.bin", 1, GRPO "--tools search=$T/sft.bin " FORMAT,
                   "sft.bin: is no corpus; data/make_corpus makes one");
    refused_output("grpo.bin", 1, GRPO "--tools search " FORMAT, "--tools: search: give the corpus");
    /* a stop text within a call: it cannot be read, and the model reads the text */
    run(0, "./generate -c $T/sft.bin -i $T/tasks.shard --temperature 0 -g 44 " FORMAT
           " --tools calculator --stop '*' --max-turns 2 --invalid-action-text 'Try again.'");
    assert_holds(out, "{\"role\":\"tool\",\"content\":\"Try again.\"}");
    assert_holds(out, "84,114,121,32,97,103,97,105,110,46"); /* as bytes */
    assert_null(strstr(out, "could not be read"));
    /* the calls are programs that print nothing */
    CodeTool c;
    const CodeToolOptions o = {.sandbox = sandbox_defaults(), .timeout = 1};
    Error e;
    if (!code_tool_open(&c, &o, &e)) return;
    code_tool_close(&c);
    run(0,
        "./generate -c $T/sft.bin -i $T/tasks.shard --temperature 0 -g 44 " FORMAT " --tools python --code-timeout 2");
    assert_holds(out, "{\"role\":\"tool\",\"content\":\"\",\"name\":\"python\"}");
    assert_null(strstr(out, "tool_failed"));
}

/* ---- programs on pipes ----------------------------------------------------------------------------------------- */

#define HELLO                                                                                                          \
    "{\"op\":\"hello\",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"product\",\"parameters\":{"          \
    "\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"string\"}},\"required\":[\"x\"]}}}]"
#define GENERATE                                                                                                       \
    "./generate -c $T/sft.bin -i $T/tasks.shard --temperature 0 -g 44 " FORMAT " --max-turns 3 --tool-start-timeout 5 "

/* Writes the program NAME: a sed script that answers calls by `answer`, after `before` commands. */
static void put_program(const char *name, const char *hello, const char *before, const char *answer) {
    TextBuffer text = {0};
    text_format(&text,
                "exec sed -u -e '%s' -e 's/^{\"op\":\"hello\".*$/%s}/' "
                "-e 's/^{\"op\":\"call\"\\(.*\\)\"name\":.*\"id\":\\(\"[^\"]*\"\\)}$/%s/' "
                "-e 's/^{\"op\":\"reset\",\\(\"id\":\"[^\"]*\"\\).*$/{\"op\":\"reset\",\\1}/' "
                "-e 's/^{\"op\":\"end\".*\\(\"id\":\"[^\"]*\"\\)}$/{\"op\":\"end\",\"reward\":0.5,\\1}/'\n",
                before, hello, answer);
    put(name, text.text);
    text_free(&text);
}

/* The tokens of all lines. */
static char *tokens_of_lines(void) {
    TextBuffer all = {0};
    for (const char *at = out; (at = strstr(at, "\"tokens\":"));) {
        at += 9;
        text_append(&all, at, strcspn(at, "]"));
    }
    return all.text;
}

/* The same tokens with one worker and three, with few slots and many, and with workers that die after a few answers. */
static void test_programs(void **state) {
    (void)state;
    static const char *const answer = "{\"op\":\"call\"\\1\"content\":\"77\",\"id\":\\2}";
    put_program("ok.sh", HELLO, "", answer);
    put_program("dies.sh", HELLO, "6Q", answer);
    run(0, GENERATE "--tool-cmd 'sh $T/ok.sh' --tool-workers 1 --slots 4");
    char *wanted = tokens_of_lines();
    assert_holds(out, "\"role\":\"tool\",\"content\":\"77\",\"name\":\"product\"");
    static const char *const same[] = {
        GENERATE "--tool-cmd 'sh $T/ok.sh' --tool-workers 3 --slots 64",
        GENERATE "--tool-cmd 'sh $T/dies.sh' --tool-workers 1 --slots 4 --tool-retries 100",
        GENERATE "--tool-cmd 'sh $T/dies.sh' --tool-workers 2 --slots 16 --tool-retries 100"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        run(0, same[i]);
        char *got = tokens_of_lines();
        assert_string_equal(got, wanted);
        free(got);
    }
    /* the same from rows and from lines of text; the program reads what a row has, and of a line its text */
    put_program("logs.sh", HELLO ",\"episodes\":true", "/\"reset\"/w '$T'/resets", answer);
    run(0, "./data/make_tasks --task bigmul --digits 2 --count 100 --seed 2 --as jsonl -o $T/tasks.jsonl && "
           "sed 's/^{\"prompt\":\"\\([^\"]*\\)\".*/\\1/' $T/tasks.jsonl >$T/tasks.txt");
    static const char *const kinds[] = {"shard", "jsonl", "txt"};
    for (int i = 0; i < 3; i++) {
        char command[500];
        snprintf(command, sizeof command,
                 GENERATE "-i $T/tasks.%s --tool-cmd 'sh $T/logs.sh' --tool-workers 1 && sort $T/resets >$T/resets.%s",
                 kinds[i], kinds[i]);
        run(0, command);
        char *got = tokens_of_lines();
        assert_string_equal(got, wanted);
        free(got);
    }
    /* with a reset before the first turn: the completion begins with the prompt's last token, the template having none after a
     * user's message; the answer can narrow the tools */
    put_program("opens.sh", HELLO ",\"episodes\":true,\"opening\":true", "", answer);
    run(0,
        GENERATE "--tool-cmd 'sh $T/opens.sh' --tool-workers 2 --slots 5 | sed 's/\"tokens\":.[0-9]*,/\"tokens\":[/'");
    char *opened = tokens_of_lines();
    assert_string_equal(opened, wanted);
    free(opened);
    put_program("narrow.sh", HELLO ",\"episodes\":true,\"opening\":true",
                "s/^{\"op\":\"reset\",\\(\"id\":\"[^\"]*\"\\).*$/{\"op\":\"reset\",\\1,\"tools\":[]}/;t", answer);
    run(0, GENERATE "--tool-cmd 'sh $T/narrow.sh' --tool-workers 1");
    assert_holds(out, "unknown tool 'product'; there are: none");
    free(wanted);
    run(0, "cmp $T/resets.shard $T/resets.jsonl && "
           "sed 's/\"answer\":.*\"seed\"/\"answer\":\"\",\"task\":\"\",\"seed\"/;s/\"fields\":{.*}}/\"fields\":{}}/' "
           "$T/resets.shard | cmp - $T/resets.txt && test $(wc -l <$T/resets.txt) = 100");
    /* rewards of calls and of the end, and an end of the trajectory */
    put_program("done.sh", HELLO ",\"episodes\":true", "",
                "{\"op\":\"call\"\\1\"content\":\"77\",\"reward\":0.25,\"done\":true,\"id\":\\2}");
    run(0, GENERATE "--tool-cmd 'sh $T/done.sh' --tool-workers 1");
    assert_holds(out, "\"stop\":\"tool_stopped\",\"turn_rewards\":[0.25]");
    assert_true(rows_unread(out) >= occurrences(out, "\"stop\":\"tool_stopped\""));
    run(0, GRPO "--tool-cmd 'sh $T/done.sh' " FORMAT " --reward none --metrics $T/m.jsonl --tool-workers 2");
    char *metrics = text_of(files_path("m.jsonl"));
    const char *reward = strstr(metrics, "\"reward\":0.");
    assert_true(reward && strtod(reward + 9, NULL) > 0.5 && strtod(reward + 9, NULL) <= 0.75);
    free(metrics);
}

/* train_dpo --online learns from pairs of trajectories. */
static void test_online_pairs(void **state) {
    (void)state;
#define DPO "./train_dpo -c $T/sft.bin -i $T/tasks.shard --online -d 16 -g 44 -x 4 -l 1e-3 -o $T/dpo.bin --slots 32 "
    run(0, DPO "--tools calculator " FORMAT " --reward verify,tool-use --metrics $T/m.jsonl --rollouts $T/r.jsonl");
    char *metrics = text_of(files_path("m.jsonl"));
    const char *calls = strstr(metrics, "\"tools/call_frequency\":");
    assert_true(calls && strtod(calls + 23, NULL) > 0.2);
    assert_holds(metrics, "\"rewards/accuracies\":");
    free(metrics);
    put_program("paid.sh", HELLO ",\"episodes\":true", "",
                "{\"op\":\"call\"\\1\"content\":\"77\",\"reward\":0.25,\"id\":\\2}");
    run(0, DPO "--tool-cmd 'sh $T/paid.sh' --max-turns 3 " FORMAT " --reward none --online-loss xpo");
    refused_output("dpo.bin", 2, DPO "--tools calculator " FORMAT " --reward verify --online-loss nash_md",
                   "--online-loss nash_md: cannot be combined with --tools");
    refused_output("dpo.bin", 2, "./train_dpo -c $T/sft.bin -i $T/tasks.shard -o $T/dpo.bin --tools calculator",
                   "--tools: used only with --online");
}

/* evaluate counts turns and calls, and writes the turns of each completion. */
static void test_evaluate(void **state) {
    (void)state;
    run(0, "./evaluate -c $T/sft.bin -i $T/tasks.shard --num-samples 2 -g 44 --slots 8 --tools calculator " FORMAT
           " --completions $T/rows.jsonl --seed 3");
    const char *turns = strstr(out, "\"turns_mean\":"), *calls = strstr(out, "\"tool_calls_mean\":");
    assert_true(turns && calls);
    assert_holds(out, "\"stop\":{\"");
    char *rows = text_of(files_path("rows.jsonl"));
    double n = 0, drawn = 0, calling = 0;
    for (const char *at = rows, *end; (end = strchr(at, '\n')); at = end + 1) {
        json_t *row = json_loadb(at, (size_t)(end - at), 0, NULL), *message;
        size_t i;
        if (json_is_integer(json_object_get(row, "sample"))) {
            n++;
            drawn += (double)json_array_size(json_object_get(row, "turn_rewards"));
            json_array_foreach(json_object_get(row, "messages"), i, message) calling +=
                (double)json_array_size(json_object_get(message, "tool_calls"));
            assert_true(json_is_string(json_object_get(row, "stop")) && json_array_size(json_object_get(row, "drawn")));
        }
        json_decref(row);
    }
    free(rows);
    assert_true(n == 200 && calling > 100);
    assert_true(fabs(strtod(turns + 13, NULL) - drawn / n) < 1e-9);
    assert_true(fabs(strtod(calls + 18, NULL) - calling / n) < 0.2); /* without calls that could not be read */
    assert_holds(said, " turns and ");
    /* generate prints the turns of one prompt, and what the calculator answered */
    run(0, "./generate -c $T/sft.bin --temperature 0 -g 44 --tools calculator " FORMAT
           " --max-turns 2 --verbose '12*34='");
    assert_holds(out, "<c>");
    assert_holds(out, "<r>");
    assert_holds(said, " after 2 turns, ");
}

/* Figures of all steps to the last digit; those of the second depend on the weights that the first one left. */
#define FIGURES                                                                                                        \
    "grep '^{\"step\"' $T/m.jsonl | grep -oE '\"(loss|grad_norm|reward|num_tokens|entropy|turns/mean)\":[^,]*'"

/* The same figures, to the bit, with few slots and one worker, and with many slots and workers that answer late and in any
 * order; with rewards of turns, and with the opposite of an answer they are others. */
static void test_order(void **state) {
    (void)state;
    put("late.pl",
        "my ($wait, $sign, $in, @q) = (@ARGV, '');\n"
        "$| = 1;\n"
        "for (;;) {\n"
        "    vec(my $ready = '', 0, 1) = 1;\n"
        "    if (select $ready, undef, undef, @q ? $wait * rand : undef) {\n"
        "        sysread STDIN, $in, 65536, length $in or last;\n"
        "        push @q, $1 while $in =~ s/^(.*)\\n//;\n"
        "        next if rand() * $wait > 0.001;\n"
        "    }\n"
        "    next if !@q;\n"
        "    my $line = splice(@q, $wait ? int rand @q : 0, 1);\n"
        "    my ($op) = $line =~ /\"op\":\"(\\w+)\"/;\n"
        "    my @keys = $line =~ /(\"(?:id\":\"[^\"]*\"|(?:turn|call)\":\\d+))/g;\n"
        "    my ($x) = $line =~ /\"x\":\"(.*?)\"/;\n"
        "    push @keys, '\"state\":{\"a\":1},\"content\":\"' . length($x) . '\",\"reward\":' . $sign * length $x if $op eq 'call';\n"
        "    push @keys, '\"episodes\":true,\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"product\",\"parameters\":"
        "{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"string\"}},\"required\":[\"x\"]}}}]' if $op eq 'hello';\n"
        "    print '{', join(',', \"\\\"op\\\":\\\"$op\\\"\", @keys), \"}\\n\";\n"
        "}\n");
    static const char *const how[] = {"--slots 4 --tool-workers 1 --tool-cmd 'perl $T/late.pl 0 1'",
                                      "--slots 64 --tool-workers 8 --tool-cmd 'perl $T/late.pl 0.02 1'",
                                      "--slots 5 --tool-workers 3 --tool-cmd 'perl $T/late.pl 0.01 1'",
                                      "--slots 5 --tool-workers 3 --tool-cmd 'perl $T/late.pl 0 -1'"};
    char *figures[4];
    for (int i = 0; i < 4; i++) {
        char command[700];
        snprintf(command, sizeof command,
                 GRPO "-l 0.01 --max-turns 3 --advantage-level return --reward none " FORMAT
                      " %s --metrics $T/m.jsonl && " FIGURES,
                 how[i]);
        run(0, command);
        figures[i] = strdup(out);
    }
    assert_string_equal(figures[0], figures[1]);
    assert_string_equal(figures[0], figures[2]);
    assert_string_not_equal(figures[0], figures[3]);
    for (int i = 0; i < 4; i++) free(figures[i]);
}

/* A reward program reads all turns and why they ended; completions that ended for a reason leave the loss. */
static void test_rewards(void **state) {
    (void)state;
    put("reward.sh", "while read -r line; do echo \"$line\" >>$T/lines; echo 1; done");
    run(0, GRPO "--tools calculator " FORMAT
                " --reward-cmd 'sh $T/reward.sh' --parse-error-penalty 0.5 --metrics $T/m.jsonl");
    char *lines = text_of(files_path("lines"));
    assert_holds(lines, "\"stop\":\"completed\"");
    assert_holds(lines, "\"messages\":[{\"role\":\"user\",\"content\":\"");
    assert_holds(lines, "\"tool_calls\":[{\"type\":\"function\",\"function\":{\"name\":\"calculator\"");
    assert_holds(lines, "{\"role\":\"tool\",\"content\":\"");
    assert_int_equal(occurrences(lines, "\"unread\":"), lines_of(lines));
    free(lines);
    char *metrics = text_of(files_path("m.jsonl"));
    assert_holds(metrics, "\"tools/calculator/calls\":");
    assert_holds(metrics, "\"rollout/parked_share\":0");
    free(metrics);
    /* all turns as the text, two programs, groups as lines */
    put("reward.sh", "while read -r line; do echo \"$line\" >>$T/lines$$; echo '[1,null,0,0.5]'; done");
    run(0,
        "rm $T/lines*; " GRPO "--tools calculator " FORMAT
        " --reward command,tool-use:0.1,turns=2:1 --reward-scope all "
        "--reward-cmd 'sh $T/reward.sh' --reward-workers 2 --reward-group --metrics $T/m.jsonl && cat $T/lines* | "
        "sed 's/\"completion\":\"<c>/&\\n/g' | grep -c '^{\"group\".*\"completion\":\"<c>$' && ls $T/lines* | wc -l");
    assert_holds(out, "8\n2\n");
    metrics = text_of(files_path("m.jsonl"));
    assert_holds(metrics, "\"rewards/command/mean\":0.5,");
    assert_holds(metrics, "\"rewards/tool-use/mean\":");
    free(metrics);
    /* with every reason masked no token is trained on */
    run(0, GRPO "--tools calculator " FORMAT " --metrics $T/m.jsonl --mask-stopped "
                "completed,max_tokens,context_overflow,max_turns,parse_error");
    metrics = text_of(files_path("m.jsonl"));
    assert_holds(metrics, "\"num_trained_tokens\":0");
    free(metrics);
    /* turns that a limit cuts have neither a call nor an answer */
    static const char *const void_turns[] = {"", "--mask-void-turns"};
    for (int i = 0; i < 2; i++) {
        char command[700];
        snprintf(command, sizeof command,
                 GRPO "--tools calculator " FORMAT " --max-turn-tokens 2 %s --metrics $T/m.jsonl", void_turns[i]);
        run(0, command);
        metrics = text_of(files_path("m.jsonl"));
        assert_holds(metrics, "\"stop/max_turn_tokens\":1");
        assert_int_equal(strstr(metrics, "\"num_trained_tokens\":0") != NULL, i);
        free(metrics);
    }
    refused_output("grpo.bin", 1, GRPO "--tools calculator " FORMAT " --mask-stopped completed,tired",
                   "--mask-stopped: 'tired' is no reason for which a completion ends");
}

/* A command that ends with status 1 and a message. */
static void fails(const char *command, const char *part) {
    run(1, command);
    assert_holds(said, part);
}

/* Rows that name their environment and their tools: each has its program alone, and calls of other tools are unknown. */
static void test_environments(void **state) {
    (void)state;
    static const char *const answer = "{\"op\":\"call\"\\1\"content\":\"77\",\"id\":\\2}";
    /* a program that answers turns: the second one is right */
    put("text.sh",
        "exec sed -u -e '/\"reset\"/w '$T'/text.resets' "
        "-e 's/^{\"op\":\"hello\".*$/{\"op\":\"hello\",\"text\":true,\"episodes\":true,\"name\":\"game\"}/' "
        "-e 's/^{\"op\":\"step\",\"turn\":\\(.\\).*\"id\":\\(\"[^\"]*\"\\)}$/{\"op\":\"step\",\"turn\":\\1,\"observation\":\"no\",\"done\":true,\"id\":\\2}/' "
        "-e 's/^{\"op\":\"reset\",\\(\"id\":\"[^\"]*\"\\).*$/{\"op\":\"reset\",\\1}/' "
        "-e 's/^{\"op\":\"end\".*\\(\"id\":\"[^\"]*\"\\)}$/{\"op\":\"end\",\"reward\":1,\\1}/'\n");
    put_program("named.sh", HELLO ",\"episodes\":true,\"name\":\"shop\"", "/\"reset\"/w '$T'/named.resets", answer);
    run(0,
        "sed 's/\"task\"/\"environment\":\"shop\",\"task\"/' $T/tasks.jsonl >$T/shop.jsonl && "
        "sed 's/\"task\"/\"environment\":\"game\",\"task\"/' $T/tasks.jsonl | cat $T/shop.jsonl - >$T/both.jsonl && "
        "sed 's/\"task\"/\"environment\":\"bank\",\"task\"/' $T/tasks.jsonl >$T/bank.jsonl && "
        "sed 's/\"task\"/\"environment\":[\"shop\"],\"task\"/' $T/tasks.jsonl >$T/list.jsonl && "
        "sed 's/\"task\"/\"tools\":[\"product\"],\"task\"/' $T/tasks.jsonl >$T/one.jsonl && "
        "sed 's/\"task\"/\"tools\":[],\"task\"/' $T/tasks.jsonl >$T/none.jsonl && "
        "sed 's/\"task\"/\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"sum\"}}],\"task\"/' $T/tasks.jsonl >$T/sum.jsonl");
#define JSONL(file) "./generate -c $T/sft.bin -i $T/" file ".jsonl --temperature 0 -g 44 " FORMAT " --tool-workers 1 "
    run(0, JSONL("shop") "--tool-cmd 'sh $T/named.sh' && test $(wc -l <$T/named.resets) = 100");
    assert_holds(out, "\"role\":\"tool\",\"content\":\"77\",\"name\":\"product\"");
    fails(JSONL("bank") "--tool-cmd 'sh $T/named.sh'",
          "prompt 1: its environment is 'bank'; the programs of --tool-cmd are: shop");
    fails(JSONL("list") "--tool-cmd 'sh $T/named.sh'",
          "prompt 1: its field environment is no text; the programs of --tool-cmd are: shop");
    fails(JSONL("both") "--tool-cmd 'sh $T/named.sh' --tool-cmd 'sh $T/named.sh'", "there are two of this name");
    fails(JSONL("both") "--tool-cmd 'sh $T/named.sh' --tool-cmd 'sh $T/text.sh'", "it ends turns of its own");
    fails(JSONL("sum") "--tool-cmd 'sh $T/named.sh'",
          "prompt 1: its field tools has 'sum', which neither --tools nor --tool-cmd gives");
    run(0, JSONL("one") "--tool-cmd 'sh $T/named.sh'");
    assert_holds(out, "\"content\":\"77\"");
    run(0, JSONL("none") "--tool-cmd 'sh $T/named.sh'");
    assert_holds(out, "unknown tool 'product'; there are: none");
    /* with a format of messages, both kinds of programs in one run */
#define GAMES(file)                                                                                                    \
    "./generate -c $T/sft.bin -i $T/" file                                                                             \
    ".jsonl --temperature 0 -g 60 --chat-template chatml --tool-format hermes --tool-workers 1 "                       \
    "--tool-cmd 'sh $T/named.sh' --tool-cmd 'sh $T/text.sh' "
    fails(GAMES("tasks"),
          "prompt 1: it has no field environment, which chooses among the programs of --tool-cmd: shop, game");
    run(0, "rm -f $T/*.resets; " GAMES(
               "both") "| grep -c '\"stop\":\"tool_stopped\"'; wc -l <$T/text.resets; cat $T/named.resets | wc -l");
    assert_string_equal(out, "100\n100\n100\n");
}

/* Options of a trainer, and a metric that it then logs. */
typedef struct CreditCase {
    const char *options, *metric;
} CreditCase;

/* Runs a trainer with the options of each case, then the command `figures`, whose output must differ from that of the earlier
 * cases. */
static void assert_each_changes(const char *trainer, const char *figures, const CreditCase *cases, size_t count) {
    char *model[16];
    assert_in_range(count, 1, 16);
    for (size_t i = 0; i < count; i++) {
        char command[900];
        snprintf(command, sizeof command, "%s%s && %s", trainer, cases[i].options, figures);
        run(0, command);
        model[i] = xstrdup(out);
        char *metrics = text_of(files_path("m.jsonl"));
        assert_holds(metrics, cases[i].metric);
        free(metrics);
        for (size_t k = 0; k < i; k++) assert_string_not_equal(model[i], model[k]);
    }
    for (size_t i = 0; i < count; i++) free(model[i]);
}

#define TURNS                                                                                                          \
    GRPO "--tool-cmd 'perl $T/late.pl 0 1' --tool-workers 1 --max-turns 3 " FORMAT " -l 0.01 --metrics $T/m.jsonl "
#define PPO                                                                                                             \
    "./train_ppo -c $T/sft.bin -i $T/tasks.shard -p 8 -g 44 -x 2 -l 0.01 --kl-coef 0 --tool-cmd 'perl $T/late.pl 0 1' " \
    "--tool-workers 1 --max-turns 3 " FORMAT " --metrics $T/m.jsonl "

/* Turns with advantages of their own, LLDS, the cross-entropy of observations and masked turns: the metrics, and that each
 * changes the model; options without effect. */
static void test_credit(void **state) {
    (void)state;
    static const CreditCase cases[] = {{"", "\"llds/right\":"},
                                       {"--advantage-level turn --turn-weight 2", "\"llds/right\":"},
                                       {"--advantage-level return --turn-gamma 0.5", "\"llds/right\":"},
                                       {"--advantage-level gigpo --gigpo-norm none", "\"gigpo/state_size\":"},
                                       {"--observation-ce 0.5", "\"observation_ce\":"},
                                       {"--num-iterations 2", "\"llds/right\":"},
                                       {"--num-iterations 2 --llds-coef 5", "\"llds/active\":"}};
    assert_each_changes(TURNS, FIGURES, cases, sizeof cases / sizeof *cases);
    refused_output("grpo.bin", 2, GRPO "--advantage-level turn",
                   "--advantage-level: used only with --tools or --tool-cmd");
    refused_output("grpo.bin", 2, TURNS "--turn-weight 2", "--turn-weight: used only by --advantage-level turn");
    refused_output("grpo.bin", 2, TURNS "--llds-coef 1",
                   "--llds-coef: the likelihood has not changed in the only step");
    refused_output("grpo.bin", 2, TURNS "--advantage-level gigpo --scale-rewards batch",
                   "--scale-rewards: not used by");
    refused_output("grpo.bin", 2, TURNS "--advantage-level turn --loss-type gmpo",
                   "--advantage-level: --loss-type vespo, gmpo and rloo have one advantage");
    refused_output("grpo.bin", 2, TURNS "--advantage-level turn --advantage-estimator opo",
                   "--advantage-level: cannot be combined with --advantage-estimator");
    refused_output("grpo.bin", 2, GRPO "--mask-error-turns", "--mask-error-turns: used only with --tools");
}

/* Results that are cut to a number of tokens, which are bytes here: what the model reads, the metric, and one warning. */
static void test_cut_results(void **state) {
    (void)state;
    static const char *const sides[][2] = {{"left", "...(truncated)...qrstuvwxyz"},
                                           {"middle", "abcde...(truncated)...vwxyz"},
                                           {"right", "abcdefghij...(truncated)..."}};
    put_program("long.sh", HELLO, "", "{\"op\":\"call\"\\1\"content\":\"abcdefghijklmnopqrstuvwxyz\",\"id\":\\2}");
    for (int i = 0; i < 3; i++) {
        char command[600], message[100], tokens[200] = "60,114,62"; /* <r> */
        snprintf(command, sizeof command,
                 GENERATE "-g 70 --tool-cmd 'sh $T/long.sh' --tool-workers 1 --max-tool-response-length 10 "
                          "--tool-response-truncate-side %s",
                 sides[i][0]);
        run(0, command);
        snprintf(message, sizeof message, "\"role\":\"tool\",\"content\":\"%s\"", sides[i][1]);
        assert_holds(out, message);
        for (const char *c = sides[i][1]; *c; c++) snprintf(tokens + strlen(tokens), 8, ",%d", *c);
        assert_holds(out, tokens);
        assert_null(strstr(out, "abcdefghijk"));
    }
    run(0, GENERATE "-g 70 --tool-cmd 'sh $T/long.sh' --tool-workers 1 --max-tool-response-length 26");
    assert_holds(out, "abcdefghijklmnopqrstuvwxyz");
    /* a cut within a character */
    put_program("wide.sh", HELLO, "", "{\"op\":\"call\"\\1\"content\":\"\xc3\xa9\xc3\xa9\xc3\xa9\",\"id\":\\2}");
    run(0, GENERATE "-g 70 --tool-cmd 'sh $T/wide.sh' --tool-workers 1 --max-tool-response-length 3 "
                    "--tool-response-truncate-side right");
    assert_holds(out, "\"content\":\"\xc3\xa9\xef\xbf\xbd...(truncated)...\"");
    run(0, GRPO FORMAT " -g 70 --tool-cmd 'sh $T/long.sh' --tool-workers 1 --max-turns 3 --max-tool-response-length 10 "
                       "--metrics $T/m.jsonl");
    assert_int_equal(
        occurrences(said, "results of tools had more than 10 tokens and were cut (--max-tool-response-length)"), 1);
    const double cut = metric("m.jsonl", 0, "tools/truncated_results");
    assert_true(cut > 5 && cut >= metric("m.jsonl", 0, "tools/product/calls"));
    /* one that does not fit into the completion ends it, is not among its tokens, and is unread in its messages, as those after
     * the last turn are */
    put_program("ends.sh", HELLO ",\"episodes\":true", "/\"op\":\"end\"/w '$T/ends'",
                "{\"op\":\"call\"\\1\"content\":\"abcdefghijklmnopqrstuvwxyz\",\"id\":\\2}");
    run(0, GENERATE "--tool-cmd 'sh $T/ends.sh' --tool-workers 1 -g 30");
    assert_holds(out, "\"stop\":\"max_tokens\"");
    assert_null(strstr(out, "97,98,99,100,101"));
    const size_t unread = rows_unread(out);
    assert_true(unread > 0);
    char *ends = text_of(files_path("ends"));
    assert_int_equal(occurrences(ends, "\"unread\":1,"), unread);
    free(ends);
    run(0,
        "./generate -c $T/sft.bin -i $T/tasks.shard --temperature 0 -g 44 --tools calculator " FORMAT " --max-turns 1");
    assert_int_equal(rows_unread(out), occurrences(out, "\"stop\":\"max_turns\""));
    run(0, "./generate -c $T/sft.bin --temperature 0 -g 44 --tools calculator " FORMAT " --max-turns 1 '12*34='");
    assert_holds(said, "[max_turns after 1 turn, ");
    assert_holds(said, " drawn, 1 result not read]\n");
}

/* Tools that take 0.1 s: completions that end with the time, and slots that wait. */
static void test_slow_tools(void **state) {
    (void)state;
    put("slow.sh", "while IFS= read -r line; do\n"
                   "    case $line in *'\"op\":\"call\"'*) sleep 0.1 ;; esac\n"
                   "    printf '%s\\n' \"$line\"\n"
                   "done | sh $T/ok.sh\n");
#define SLOW GRPO FORMAT " --tool-cmd 'sh $T/slow.sh' --max-turns 3 --tool-workers 2 --metrics $T/m.jsonl "
    static const char *const clock = "warning: --rollout-timeout: completions depend on the clock";
    static const char *const slots = " of the time: more --slots would keep the model busy";
    run(0, SLOW "--slots 2");
    const double share = metric("m.jsonl", 0, "rollout/parked_share");
    assert_true(share > 0.5 && share < 1);
    assert_int_equal(occurrences(said, slots), 1);
    assert_null(strstr(said, clock));
    assert_true(metric("m.jsonl", 0, "tools/product/latency_p50") >= 0.1);
    assert_true(metric("m.jsonl", 0, "stop/rollout_timeout") == 0);
    const double calls = metric("m.jsonl", 0, "tools/product/calls");
    run(0, SLOW "--slots 64 --rollout-timeout 0.05");
    assert_int_equal(occurrences(said, clock), 1);
    assert_null(strstr(said, slots)); /* all completions have one */
    const double ended = metric("m.jsonl", 0, "stop/rollout_timeout");
    assert_true(ended > 0.3 && ended <= calls / 16);
    assert_true(metric("m.jsonl", 0, "turns/max") == 1);
    assert_true(metric("m.jsonl", 0, "completions/clipped_ratio") >= ended);
    run(0, SLOW
        "-x 1 --slots 64 --rollout-timeout 0.05 --mask-stopped completed,max_tokens,context_overflow,rollout_timeout");
    assert_true(metric("m.jsonl", 0, "num_trained_tokens") == 0);
    run(0, GENERATE "--tool-cmd 'sh $T/slow.sh' --tool-workers 8 --rollout-timeout 0.05");
    assert_holds(out, "\"stop\":\"rollout_timeout\"");
}

/* --state-masking false: the same completions, of which the observed tokens are in the loss, too, with the log-probabilities of
 * the policy. reward: the metric of the mean reward; passes: over the tokens of a generation, in the first step. */
static void assert_state_masking(const char *trainer, const char *reward, int passes) {
    enum { SAME = 5 };
    static const char *const masking[] = {"true", "false"};
    const char *const same[SAME] = {reward, "num_tokens", "completions/mean_length", "rollout/observed_tokens",
                                    "turns/mean"};
    double figure[2][SAME], trained[2];
    char *model[2];
    for (int i = 0; i < 2; i++) {
        char command[900];
        snprintf(command, sizeof command, "%s --state-masking %s && " FIGURES, trainer, masking[i]);
        run(0, command);
        model[i] = xstrdup(out);
        assert_true(metric("m.jsonl", 0, "sampling/sampling_logp_difference/max") < 1e-4);
        for (int k = 0; k < SAME; k++) figure[i][k] = metric("m.jsonl", 0, same[k]);
        trained[i] = metric("m.jsonl", 0, "num_trained_tokens");
    }
    for (int k = 0; k < SAME; k++) assert_true(figure[0][k] == figure[1][k]);
    const double observed = metric("m.jsonl", 0, "rollout/observed_tokens");
    assert_true(observed > 10);
    assert_true(trained[1] - trained[0] == passes * observed);
    assert_string_not_equal(model[0], model[1]);
    for (int i = 0; i < 2; i++) free(model[i]);
}

/* The tokens that GFPO counts are those that the model drew, in the loss or not: it keeps the same completions. */
static void assert_same_filter(void) {
    static const char *const masking[] = {"true", "false"};
    char *advantages[2];
    for (int i = 0; i < 2; i++) {
        char command[900];
        snprintf(command, sizeof command,
                 TURNS "-x 1 --num-remains-in-group 2 --state-masking %s --rollouts $T/r.jsonl && "
                       "grep -o '\"advantage\":[^,]*' $T/r.jsonl",
                 masking[i]);
        run(0, command);
        advantages[i] = xstrdup(out);
    }
    assert_string_equal(advantages[0], advantages[1]);
    for (int i = 0; i < 2; i++) free(advantages[i]);
}

static void test_state_masking(void **state) {
    (void)state;
    assert_state_masking(TURNS "--beta 0.1", "reward", 1);
    assert_state_masking(TURNS "--num-iterations 2 --advantage-level return", "reward", 1);
    assert_state_masking(PPO "-o $T/ppo.bin --num-ppo-epochs 2", "objective/scores", 2);
    assert_state_masking(PPO "-o $T/ppo.bin --algo rloo -G 2 --num-ppo-epochs 1", "objective/scores", 1);
    assert_same_filter();
    refused_output("grpo.bin", 2, GRPO "--state-masking false",
                   "--state-masking: used only with --tools or --tool-cmd");
    refused_output("grpo.bin", 2, TURNS "--state-masking false --observation-ce 1",
                   "--observation-ce: with --state-masking");
    refused_output("grpo.bin", 2, TURNS "--state-masking false --mask-error-turns",
                   "--mask-error-turns: makes drawn tokens");
    refused_output("p.bin", 2, PPO "-o $T/p.bin --gae-level turn --state-masking false", "give --state-masking true");
}

/* train_ppo with turns: GAE on two levels, the cross-entropy of observations with a value head and with a critic of its own, and
 * LLDS; options without effect. */
static void test_ppo_credit(void **state) {
    (void)state;
    static const CreditCase cases[] = {{"", "\"critic/returns/mean\":"},
                                       {"--gae-level turn", "\"critic/returns/mean\":"},
                                       {"--gae-level turn --turn-gamma 0.5", "\"critic/returns/mean\":"},
                                       {"--observation-ce 0.5", "\"observation_ce\":"},
                                       {"--observation-ce 0.5 --critic $T/sft.bin", "\"observation_ce\":"},
                                       {"--algo rloo -G 2 --num-ppo-epochs 2", "\"tools/product/calls\":"},
                                       {"--algo rloo -G 2 --num-ppo-epochs 2 --llds-coef 5", "\"llds/active\":"}};
    assert_each_changes(PPO "-o $T/ppo.bin ", "cksum <$T/ppo.bin", cases, sizeof cases / sizeof *cases);
    /* with every reason masked no token is trained on */
    run(0, PPO "-o $T/ppo.bin --mask-stopped completed,max_tokens,context_overflow,max_turns,parse_error");
    char *metrics = text_of(files_path("m.jsonl"));
    assert_holds(metrics, "\"num_trained_tokens\":0");
    free(metrics);
    refused_output("p.bin", 2, "./train_ppo -c $T/sft.bin -i $T/tasks.shard -o $T/p.bin --gae-level turn",
                   "--gae-level: used only with --tools or --tool-cmd");
    refused_output("p.bin", 2, PPO "-o $T/p.bin --turn-gamma 0.5", "--turn-gamma: used only with --gae-level turn");
    refused_output("p.bin", 2, PPO "-o $T/p.bin --algo rloo -G 2 --gae-level turn", "used only with a critic");
    refused_output("p.bin", 2, PPO "-o $T/p.bin --llds-coef 1", "--llds-coef: LLDS keeps turns with A >= 0");
    refused_output("p.bin", 2, PPO "-o $T/p.bin --gae-level turn --reward-clip 1", "are of a whole completion");
}

#define REFUSED(program, part)                                                                                         \
    refused_output("out.jsonl", 1, GENERATE "--tool-workers 1 -o $T/out.jsonl " program, part)

/* What our machinery does wrong ends the run in one line, or is counted; it is never a result. */
static void test_failing_programs(void **state) {
    (void)state;
    REFUSED("--tool-cmd true", "tool program 'true', worker 0: ended with exit status 0 between two answers");
    REFUSED("--tool-cmd 'echo oops; cat'", "worker 0: wrote a line that is not a JSON object; its last output: 'oops");
    REFUSED("--tool-cmd 'echo {}; cat'", "worker 0: its first line is no {\"op\":\"hello\",...}");
    REFUSED("--tool-cmd 'sleep 9' --tool-start-timeout 0.1", "worker 0: no hello in 0.1 seconds");
    REFUSED("--tool-cmd 'echo \"{\\\"op\\\":\\\"hello\\\"}\"; cat'", "its hello names no tools");
    REFUSED("--tool-cmd 'head -c 3000000 /dev/zero | tr \"\\\\0\" x; cat'", "wrote a line of more than 1048576 bytes");
    put_program("twice.sh", HELLO, "", "");
    REFUSED("--tool-cmd 'sh $T/twice.sh' --tool-cmd 'sh $T/twice.sh'", "tool product: there are two of this name");
    static const char *const answers[][2] = {
        {"{\"op\":\"call\"\\1\"content\":\"77\",\"id\":\"no\"}", "which answers no request"},
        {"no", "wrote a line that is not a JSON object"},
        {"{\"op\":\"call\"\\1\"content\":\"77\",\"reward\":NaN,\"id\":\\2}", "wrote a line that is not a JSON object"},
        {"{\"op\":\"call\"\\1\"content\":\"\xff\",\"id\":\\2}", "wrote a line that is not a JSON object"}};
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        put_program("bad.sh", HELLO, "", answers[i][0]);
        REFUSED("--tool-cmd 'sh $T/bad.sh' --tool-retries 0", answers[i][1]);
    }
    put_program("silent.sh", HELLO, "/^{\"op\":\"call\"/d", "");
    REFUSED("--tool-cmd 'sh $T/silent.sh' --tool-timeout 0.2 --tool-retries 0 --slots 200", "no answer in 0.2 seconds");
    /* lost completions have no reward */
    put_program("lost.sh", HELLO ",\"episodes\":true", "", "no");
    run(0, GENERATE "--tool-cmd 'sh $T/lost.sh' --tool-workers 1 --max-tool-failures 1 --reward verify,length=0/10");
    assert_holds(out, "\"stop\":\"tool_failed\"");
    for (char *line = strtok(out, "\n"); line; line = strtok(NULL, "\n")) {
        if (!strstr(line, "\"stop\":\"tool_failed\"")) continue;
        assert_holds(line, "\"right\":null");
        assert_holds(line, "\"reward\":null");
        assert_holds(line, "\"verify\":null");
    }
}

static int setup(void **state) { return files_setup(state) || setenv("T", files_directory, 1); }

/* The game of scripts/guess.py. */
static void test_guess(void **state) {
    (void)state;
    run(0,
        "printf '%s\\n' '{\"op\":\"hello\"}' '{\"op\":\"reset\",\"id\":\"1\",\"answer\":\"9\"}' "
        "'{\"op\":\"step\",\"id\":\"1\",\"turn\":0,\"text\":\"16\"}' '{\"op\":\"step\",\"id\":\"1\",\"turn\":1,\"text\":\"8\"}' "
        "'{\"op\":\"step\",\"id\":\"1\",\"turn\":2,\"text\":\" 9\"}' '{\"op\":\"end\",\"id\":\"1\"}' | python3 scripts/guess.py");
    assert_holds(out, "\"turn\": 0, \"observation\": \"lower\", \"done\": false, \"reward\": 0}");
    assert_holds(out, "\"turn\": 1, \"observation\": \"higher\", \"done\": false, \"reward\": 0}");
    assert_holds(out, "\"turn\": 2, \"observation\": \"lower\", \"done\": true, \"reward\": 0.625}");
}

/* ---- chats ----------------------------------------------------------------------------------------------------- */

/* A message, its answer, which is the first line of `lines`, and the next message, as one raw prompt. */
static char *raw_prompt(const char *first, const char *lines, const char *next) {
    TextBuffer all = {0};
    text_format(&all, "%s%.*s<|endoftext|>%s", first, (int)strcspn(lines, "\n"), lines, next);
    return all.text;
}

#define TALK "./generate -c $T/talk.bin --temperature 0 -g 30 " FORMAT " "

/* A chat whose answers call tools: an answer is that to the whole conversation as tokens, with the cache of the answers before
 * it and without; commands; a conversation that is too long; a tool that is not waited for after Ctrl-C. */
static void test_chat(void **state) {
    (void)state;
    run(0,
        "./data/make_tasks --task bigmul --digits 2 --count 500 --format chat " FORMAT " -o $T/talk.shard && "
        "./train_sft --layers 1 --width 64 --heads 2 --context 150 -i $T/talk.shard -x 60 --batch-tokens 1024 -l 5e-3 "
        "-o $T/talk.bin");
    run(0,
        "printf '12*34=\n56*78=\n/retry\n/save '$T'/talk.json\n/reset\n12*34=\n' | " TALK "--tools calculator --chat");
    char *line[4], *rest = out;
    for (int i = 0; i < 4; i++) line[i] = strsep(&rest, "\n");
    assert_string_equal(line[1], line[2]);
    assert_string_equal(line[0], line[3]);
    assert_holds(line[0], "</c><r>");
    char *first = xstrdup(line[0]), *second = xstrdup(line[1]), *raw = raw_prompt("12*34=", first, "56*78=");
    assert_holds(said, " messages were written to ");
    run(0, TALK "--tools calculator '12*34='");
    assert_int_equal(strncmp(out, first, strlen(first)), 0);
    put("raw.txt", raw);
    run(0, TALK "--tools calculator --raw - <$T/raw.txt");
    assert_int_equal(strncmp(out, second, strlen(second)), 0);
    run(0, "cat $T/talk.json");
    json_t *row = json_loads(out, 0, NULL), *messages = json_object_get(row, "messages");
    static const char *const roles[] = {"user", "assistant", "tool", "assistant", "user", "assistant", "tool"};
    for (size_t i = 0; i < 7; i++)
        assert_string_equal(json_string_value(json_object_get(json_array_get(messages, i), "role")), roles[i]);
    json_decref(row);
    free(raw), free(first), free(second);
    run(0, "for i in 1 2 3 4 5 6; do echo 1$i*34=; done | " TALK "--tools calculator --chat --max-model-len 80");
    assert_holds(said, "[the conversation exceeds the length of 80 tokens: the oldest 2 messages were removed]");
    /* a program with episodes that is slow: Ctrl-C ends the answer, and the chat goes on */
    put("slow.pl",
        "$| = 1;\n"
        "while (my $line = <STDIN>) {\n"
        "    my ($op) = $line =~ /\"op\":\"(\\w+)\"/;\n"
        "    my ($id) = $line =~ /(\"id\":\"[^\"]*\")/;\n"
        "    my @keys = (\"\\\"op\\\":\\\"$op\\\"\");\n"
        "    if ($op eq 'call') { open my $f, '>', \"$ENV{T}/called\"; close $f; sleep 1; }\n"
        "    push @keys, $id if $id;\n"
        "    push @keys, '\"turn\":0,\"call\":0,\"content\":\"9\"' if $op eq 'call';\n"
        "    push @keys, '\"episodes\":true,\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":"
        "{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"string\"}},\"required\":[\"x\"]}}}]' if $op eq 'hello';\n"
        "    print '{', join(',', @keys), \"}\\n\";\n"
        "}\n");
    put("talk.sh", "echo $$ >$T/pid; exec " TALK "--chat --max-turns 2 --tool-cmd \"perl $T/slow.pl\"");
    run(0,
        "(echo 12*34=; until [ -e $T/called ]; do sleep 0.05; done; kill -INT $(cat $T/pid); sleep 0.2; echo /reset; echo 12*34=) | "
        "sh $T/talk.sh");
    assert_holds(said, "[stopped]\n");
    assert_holds(out, "</c>\n");
    assert_holds(out, "</c><r>9</r>");
    put_program("text.sh", "{\"op\":\"hello\",\"text\":true", "", "");
    fails("./generate -c $T/talk.bin --chat --tool-cmd 'sh $T/text.sh' </dev/null",
          "--tool-cmd: its program answers the model's turns, which in a chat a person does");
    refused_output("out.jsonl", 2, "./generate -c $T/talk.bin --chat --max-model-len 50",
                   "--max-model-len: used only with --serve, or --chat with tools");
    refused_output("out.jsonl", 2, TALK "--tools calculator --chat --max-model-len 1",
                   "--max-model-len: 1 is less than 2");
}

/* ---- programs that call the model ------------------------------------------------------------------------------ */

/* Asks twice and is paid for the last answer. */
static const char agent[] =
    "import json, os, sys, urllib.request\n"
    "row = json.loads(sys.stdin.readline())\n"
    "messages = [{'role': 'user', 'content': row['prompt']}]\n"
    "for turn in range(2):\n"
    "    request = urllib.request.Request(os.environ['OPENAI_BASE_URL'] + '/chat/completions',\n"
    "        json.dumps({'messages': messages, 'max_tokens': 9, 'model': 'any'}).encode(),\n"
    "        {'Content-Type': 'application/json'})\n"
    "    said = json.load(urllib.request.urlopen(request))['choices'][0]['message']['content']\n"
    "    messages += [{'role': 'assistant', 'content': said}, {'role': 'user', 'content': 'again'}]\n"
    "print('the reward is')\n"
    "print(len(said.encode()) % 4 / 4)\n";

#define AGENTS                                                                                                         \
    "./train_grpo -c $T/sft.bin -i $T/tasks.shard -p 2 -G 2 -g 60 --sample-count 0 --lr-scheduler-type constant -l 1e-3 "
#define AGENT AGENTS "--reward none --agent-cmd 'python3 $T/agent.py' "

/* A run with a program; the same bytes after an interruption; programs that fail. */
static void test_agents(void **state) {
    (void)state;
    if (access("/usr/include/microhttpd.h", F_OK)) return;
    put("agent.py", agent);
    run(0, AGENT "-x 3 -o $T/grpo.bin --metrics $T/m.jsonl --beta 0.1 --state $T/agents.state --save-steps 2");
    char *metrics = text_of(files_path("m.jsonl"));
    assert_holds(metrics, "\"agents/requests\":2");
    assert_holds(metrics, "\"turns/mean\":2");
    assert_holds(metrics, "\"stop/agent_failed\":0");
    for (const char *gap = metrics; (gap = strstr(gap, "\"sampling/sampling_logp_difference/max\":")); gap++)
        assert_true(strtod(gap + 39, NULL) < 1e-4);
    free(metrics);
    run(0, AGENT "-x 3 -o $T/parts.bin --resume $T/agents.state --beta 0.1 && "
                 "cmp $T/grpo.bin $T/parts.bin");
    /* the row, its verifier, a process that is left behind, and a key of its own */
    run(0, AGENTS "-x 1 -o $T/grpo.bin --agent-cmd 'sleep 77.125 & cat >$T/row; env | grep OPENAI | sort >$T/env; exec "
                  "python3 $T/agent.py <$T/row' --reward verify,length=0/10 --agent-workers 1");
    char *row = text_of(files_path("row")), *env = text_of(files_path("env"));
    assert_holds(row, "\"task\":\"bigmul\"");
    assert_holds(row, "\"model\":\"policy\"");
    assert_holds(env, "OPENAI_BASE_URL=http://127.0.0.1:");
    assert_holds(env, "OPENAI_MODEL=policy");
    free(row), free(env);
    run(0, "! pgrep -f 'sleep 77.125$'");
    /* failures have no reward; too many end the run */
    static const char *const failing[][2] = {
        {"--agent-cmd 'exit 3' ", "ended with exit status 3"},
        {"--agent-cmd 'kill -9 $$' ", "was killed by signal 9"},
        {"--agent-cmd 'echo 1' ", "drew no token from the model"},
        {"--agent-cmd 'sleep 9' --agent-timeout 0.1 ", "has not ended in 0.1 seconds (--agent-timeout)"},
        {"--agent-cmd 'python3 $T/agent.py; echo so' --reward none ",
         "its last line is no reward (--reward none): 'so'"}};
    for (size_t i = 0; i < sizeof failing / sizeof *failing; i++) {
        char command[600];
        snprintf(command, sizeof command, AGENTS "-x 1 -o $T/none.bin %s", failing[i][0]);
        run(1, command);
        assert_holds(said, "4 of 4 runs of a program failed (--max-agent-failures 0.1)");
        assert_holds(said, failing[i][1]);
    }
    run(0, AGENTS "-x 1 -o $T/grpo.bin --agent-cmd 'exit 3' --max-agent-failures 1 2>&1");
    assert_holds(out, "4 of 4 runs of a program failed, and their completions have no reward");
    assert_holds(out, "no completion could be scored");
    refused_output("none.bin", 2, AGENTS "-o $T/none.bin --agent-workers 2",
                   "--agent-workers: used only with --agent-cmd");
    refused_output("none.bin", 2, AGENTS "-o $T/none.bin --agent-cmd x --tools calculator",
                   "--agent-cmd: cannot be combined");
    refused_output("none.bin", 2, AGENTS "-o $T/none.bin --agent-cmd x --repetition-penalty 2", "--repetition-penalty");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_calculator),     cmocka_unit_test(test_search_order),
                                       cmocka_unit_test(test_search_queries), cmocka_unit_test(test_corpus),
                                       cmocka_unit_test(test_lookup),         cmocka_unit_test(test_code),
                                       cmocka_unit_test(test_formats),        cmocka_unit_test(test_written_calls),
                                       cmocka_unit_test(test_format_errors),  cmocka_unit_test(test_arguments),
                                       cmocka_unit_test(test_runs),           cmocka_unit_test(test_programs),
                                       cmocka_unit_test(test_order),          cmocka_unit_test(test_rewards),
                                       cmocka_unit_test(test_evaluate),       cmocka_unit_test(test_online_pairs),
                                       cmocka_unit_test(test_environments),   cmocka_unit_test(test_credit),
                                       cmocka_unit_test(test_guess),          cmocka_unit_test(test_failing_programs),
                                       cmocka_unit_test(test_chat),           cmocka_unit_test(test_agents),
                                       cmocka_unit_test(test_ppo_credit),     cmocka_unit_test(test_state_masking),
                                       cmocka_unit_test(test_cut_results),    cmocka_unit_test(test_slow_tools)};
    return cmocka_run_group_tests_name("tools", tests, setup, files_teardown);
}
