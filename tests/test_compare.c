/* test_compare.c - pages about several runs: metrics files that are read or refused, options that differ, the order of
 * stages, hostile texts, and the functions of the page's script on known values. */
#include "../llmc/base/error.h"       /* Error */
#include "../llmc/report/compare.h"   /* compare_one_option, compare_page */
#include "../llmc/report/run_facts.h" /* run_lineage_name */
#include "../llmc/report/runs.h"      /* Runs, runs_free, runs_order, runs_read, ... */
#include "files.h"                    /* files_path, files_assert_error, files_put, occurrences, ... */
#include "page.h"                     /* assert_page */

#define STEP "{\"step\":%d,\"time\":%d,\"num_tokens\":%d,\"loss\":%g}\n"

static const char *put_run(const char *name, const char *start, double scale, const char *end) {
    const char *path = files_path(name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(start, f);
    for (int i = 1; i <= 10; i++) fprintf(f, STEP, i, 1000 + 2 * i, 50 * i, scale / i);
    fputs(end, f);
    fclose(f);
    return path;
}

static void add(Runs *r, const char *path) {
    Error e = {""};
    if (!runs_read(r, path, &e)) fail_msg("%s", e.text);
}

static char *page_of(const Runs *r) {
    char *page;
    size_t n;
    FILE *f = open_memstream(&page, &n);
    compare_page(f, r);
    fclose(f);
    assert_page(page, n);
    return page;
}

/* The points that the script of figure `key` gets. */
static json_t *points_of(const char *page, const char *key) {
    char code[64];
    snprintf(code, sizeof code, "<code>%s</code></h4>", key);
    const char *begin = strstr(page, code);
    assert_non_null(begin);
    begin = strstr(begin, "<script type='application/json'>") + strlen("<script type='application/json'>");
    json_t *data = json_loadb(begin, (size_t)(strstr(begin, "</script>") - begin), 0, NULL);
    assert_non_null(data);
    return data;
}

static double number_in(const json_t *line, const char *key, size_t i) {
    return json_number_value(json_array_get(json_object_get(line, key), i));
}

static void test_two_runs(void **state) {
    (void)state;
    Runs r = {0};
    add(&r, put_run("a.jsonl",
                    "{\"record\":\"start\",\"time\":990,\"program\":\"train_sft\",\"version\":\"1\",\"args\":"
                    "{\"seed\":\"1\",\"beta\":\"0.5\",\"only\":\"x\"}}\n",
                    1, "{\"record\":\"end\",\"status\":\"stopped\",\"seconds\":{\"training\":3,\"saving\":1}}\n"));
    add(&r,
        put_run(
            "b.jsonl",
            "{\"record\":\"start\",\"time\":1002,\"program\":\"train_sft\",\"args\":{\"seed\":\"2\",\"beta\":\"0.5\"}}\n",
            2, ""));
    runs_order(&r);
    assert_false(r.chain);
    char *page = page_of(&r);
    assert_non_null(strstr(page, "<td class='mono'>seed</td><td class='mono'>1</td><td class='mono'>2</td>"));
    assert_non_null(
        strstr(page, "<td class='mono'>only</td><td class='mono'>x</td><td class='mono'>\xE2\x80\x93</td>"));
    assert_null(strstr(page, ">beta<"));                                               /* equal in both */
    assert_non_null(strstr(page, "<td>stopped</td><td>10</td><td>\xE2\x80\x93</td>")); /* no step_time, no speed */
    assert_non_null(strstr(page, "<td>without an end</td><td>10</td>"));
    assert_non_null(strstr(page, "<span>A <b>0.100</b></span><span>B <b>0.200</b></span>"));
    assert_non_null(strstr(page, "<td>training</td><td>3.0 s <span class='none'>75"));
    assert_int_equal(occurrences(page, "<figure>"), 2); /* loss and num_tokens, each drawn without the script */
    assert_true(occurrences(page, "class='line a1'") >= 2 && occurrences(page, "<g class='d1'>") >= 2);
    json_t *data = points_of(page, "loss"), *lines = json_object_get(data, "lines");
    assert_int_equal(json_array_size(lines), 2);
    for (size_t i = 0; i < 10; i++) {
        const json_t *a = json_array_get(lines, 0), *b = json_array_get(lines, 1);
        assert_true(number_in(a, "step", i) == (double)i + 1);
        assert_true(number_in(a, "tokens", i) == 50 * ((double)i + 1));
        assert_true(number_in(a, "time", i) == 1000 + 2 * ((double)i + 1) - 990);
        assert_true(number_in(b, "time", i) == 1000 + 2 * ((double)i + 1) - 1002);
        assert_true(fabs(number_in(b, "value", i) - 2 / ((double)i + 1)) < 1e-5);
    }
    json_decref(data);
    free(page);
    runs_free(&r);
}

/* Stages are in the order of their lineage, whatever the order of the files; the options that differ are listed, too. */
static void test_chain(void **state) {
    (void)state;
    Runs r = {0};
#define SFT  "{\"stage\":\"train_sft\",\"parent\":null,\"options\":{\"seed\":\"1\"}}"
#define GRPO "{\"stage\":\"train_grpo\",\"parent\":\"12ab\"}"
    add(&r,
        put_run(
            "2.jsonl",
            "{\"record\":\"start\",\"program\":\"train_grpo\",\"args\":{\"seed\":\"7\",\"own\":\"3\"},\"lineage\":[" SFT
            "," GRPO "]}\n",
            1,
            "{\"record\":\"end\",\"final\":[{\"name\":\"accuracy\",\"before\":\"1 %\",\"after\":"
            "\"90 %\"}]}\n"));
    add(&r,
        put_run("1.jsonl",
                "{\"record\":\"start\",\"program\":\"train_sft\",\"args\":{\"seed\":\"1\"},\"lineage\":[" SFT "]}\n", 1,
                ""));
    runs_order(&r);
    assert_true(r.chain);
    assert_non_null(strstr(r.runs[0].name, "1.jsonl"));
    char *page = page_of(&r);
    const char *first = strstr(page, "Supervised fine-tuning</td><td>\xE2\x80\x93</td>");
    const char *second = strstr(page, "Group-relative policy optimisation</td><td>A</td>");
    assert_true(first && second && first < second);
    assert_non_null(strstr(second, "<td>accuracy</td><td>1 %</td><td class='after'>90 %</td>"));
    assert_non_null(strstr(page, "<td class='mono'>seed</td><td class='mono'>1</td><td class='mono'>7</td>"));
    assert_null(strstr(page, ">own<")); /* an option that only one of the programs has */
    free(page);
    runs_free(&r);
}

/* What evaluate printed: a table for each data file, its columns in the order of the runs that made the models. */
static void test_evaluations(void **state) {
    (void)state;
    Runs r = {0};
    char name[3][17], text[600];
    json_t *lineage = json_loads("[" SFT "," GRPO "]", 0, NULL);
    for (size_t n = 0; n < 3; n++) run_lineage_name(lineage, n, name[n]);
    json_decref(lineage);
    add(&r, put_run("1.jsonl", "{\"record\":\"start\",\"program\":\"train_sft\",\"lineage\":[" SFT "]}\n", 1, ""));
    add(&r, put_run("2.jsonl", "{\"record\":\"start\",\"program\":\"train_grpo\",\"lineage\":[" SFT "," GRPO "]}\n", 1,
                    ""));
    for (int n = 3; n >= 0; n--) {
        snprintf(
            text, sizeof text,
            "{\"accuracy\":0.%d,\"accuracy_low\":0.05,\"accuracy_high\":0.9,\"data\":\"heldout.shard\",\"kind\":"
            "\"prompt\",\"lineage\":\"%s\",\"model\":\"<m>.bin\",\"pass@2\":0.25,\"pass@2_error\":0.01,\"seed\":%d}\n",
            n + 2, n < 3 ? name[n] : "0", n);
        files_put(files_path("e.json"), text, strlen(text));
        add(&r, files_path("e.json"));
    }
    const char *loss = "{\"data\":\"val.shard\",\"kind\":\"chat\",\"loss\":0.5,\"loss_error\":0.125,\"model\":\"x\"}\n";
    files_put(files_path("l.json"), loss, strlen(loss));
    add(&r, files_path("l.json"));
    runs_order(&r);
    char *page = page_of(&r);
    const char *table = strstr(page, "<h3 class='mono'>heldout.shard</h3>");
    assert_non_null(table);
    const char *parts[] = {
        "<th>&lt;m&gt;.bin</th>",
        "<th>before <b class='key'>A</b></th>",
        "<th><b class='key'>A ",
        "<th><b class='key'>B ",
        "<td class='mono'>accuracy</td><td>0.500 <span class='none'>0.0500 to 0.900</span></td><td>0.200 ",
        "<td>0.300 ",
        "<td>0.400 ",
        "<td class='mono'>pass@2</td><td>0.250 <span class='none'>\xC2\xB1 0.0100</span></td>",
        "do not have the same seed",
        "<h3 class='mono'>val.shard</h3>",
        "<td class='mono'>loss</td><td>0.500 <span class='none'>\xC2\xB1 0.125</span></td>"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const char *at = strstr(table, parts[i]);
        if (!at) fail_msg("no %s after %.300s", parts[i], table);
        table = at;
    }
    assert_int_equal(occurrences(page, "<h3 class='mono'>"), 2);
    free(page);
    runs_free(&r);
}

/* Runs that differ in one number are in its order; the rollouts are those of a run of the page. */
static void test_one_option(void **state) {
    (void)state;
    Runs r = {0};
    Error e = {""};
    static const char *const value[] = {"0.5", "0.02", "3"};
    char text[300], name[3][8];
#define PPO                                                                                                            \
    "{\"record\":\"start\",\"program\":\"train_ppo\",\"run\":\"%s\",\"args\":{\"kl-coef\":\"%s\",\"seed\":\"1\",\"output\":\"%s\"}}\n"
    for (int i = 0; i < 3; i++) {
        snprintf(name[i], sizeof name[i], "%d.jsonl", i);
        snprintf(text, sizeof text, PPO, name[i], value[i], name[i]);
        add(&r, put_run(name[i], text, i + 1, ""));
    }
    assert_string_equal(compare_one_option(&r), "kl-coef");
    const char *lines =
        "{\"record\":\"rollouts\",\"run\":\"1.jsonl\",\"program\":\"train_ppo\"}\n{\"step\":1,\"prompt_id\":1,"
        "\"prompt\":\"p\",\"samples\":[{\"text\":\"t\",\"tokens\":[\"t\"]}]}\n";
    files_put(files_path("r.jsonl"), lines, strlen(lines));
    add(&r, files_path("r.jsonl"));
    assert_false(runs_read(&r, files_path("r.jsonl"), &e));
    files_assert_error(&e, "a page shows the rollouts of one run");
    runs_order(&r);
    assert_true(runs_match(&r, &e));
    assert_int_equal(r.rollouts_of, 1);
    char *page = page_of(&r);
    const char *first = strstr(page, "<tr data-run='1'><td class='mono'>0.02</td>"),
               *second = strstr(page, "<tr data-run='0'><td class='mono'>0.5</td>"),
               *third = strstr(page, "<tr data-run='2'><td class='mono'>3</td>");
    assert_true(first && first < second && second < third);
    assert_non_null(strstr(page, "id='rollouts-data'"));
    free(page);
    strcpy(r.rollouts.run, "other");
    assert_false(runs_match(&r, &e));
    files_assert_error(&e, "the metrics of the run with these rollouts are not among the files");
    snprintf(text, sizeof text, PPO, "4", "word", "4");
    add(&r, put_run("4.jsonl", text, 1, ""));
    assert_null(compare_one_option(&r));
    runs_free(&r);
}

static void test_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *why;
    } table[] = {{"", "line 1: the file ends without a step"},
                 {"{\"record\":\"start\"}\n", "line 2: the file ends without a step"},
                 {"{\"step\":1}\n{\"loss\":NaN,\"step\":2}\n", "line 2: not JSON"},
                 {"{\"step\":1}\n{\"loss\":1}\n", "line 2: a line without an integer \"step\""},
                 {"{\"step\":3}\n{\"step\":3}\n", "line 2: step 3 after step 3, expected increasing steps"},
                 {"{\"step\":1}\n{\"record\":\"middle\"}\n", "line 2: a record \"middle\", expected \"start\" or"},
                 {"{\"step\":0,\"when\":\"before\",\"prompt\":\"2+2=\",\"completion\":\"4\",\"answer\":\"4\","
                  "\"reward\":1}\n", /* a file of samples */
                  "line 1: \"when\" is neither a number nor null"},
                 {"RIFF\x01\x02\n", "line 1: not JSON"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        Runs r = {0};
        Error e = {""};
        files_put(files_path("bad.jsonl"), table[i].text, strlen(table[i].text));
        assert_false(runs_read(&r, files_path("bad.jsonl"), &e));
        files_assert_error(&e, table[i].why);
        files_assert_error(&e, "bad.jsonl: ");
        assert_int_equal(r.count, 0);
    }
}

/* Every prefix of a file gives a page without the last line, or a message. */
static void test_cut(void **state) {
    (void)state;
    const char *text = "{\"record\":\"start\",\"args\":{\"a\":\"1\"}}\n{\"step\":1,\"time\":5,\"loss\":1}\n"
                       "{\"step\":2,\"time\":6,\"loss\":null}\n";
    int pages = 0;
    for (size_t n = 0; n <= strlen(text); n++) {
        Runs r = {0};
        Error e = {""};
        files_put(files_path("cut.jsonl"), text, n);
        if (!runs_read(&r, files_path("cut.jsonl"), &e)) {
            files_assert_error(&e, "cut.jsonl: line ");
            continue;
        }
        char *page = page_of(&r);
        assert_int_equal(r.runs[0].cut, strstr(page, "cut off in its last line") != NULL);
        free(page);
        runs_free(&r);
        pages++;
    }
    assert_true(pages > 30);
}

/* Names, options and metrics stay text. */
static void test_hostile(void **state) {
    (void)state;
    Runs r = {0};
    const char *evil = "</script><script>alert(1)</script><img onerror=alert(2)>'\\\"\\u202e\\u2066";
    char start[2000], more[1000];
    snprintf(
        start, sizeof start,
        "{\"record\":\"start\",\"program\":\"%s\",\"version\":\"%s\",\"args\":{\"%s\":\"%s\"},\"lineage\":[{\"stage\":"
        "\"%s\"}]}\n",
        evil, evil, evil, evil, evil);
    snprintf(more, sizeof more, "{\"step\":11,\"%s\":1}\n{\"record\":\"end\",\"status\":\"%s\"}\n", evil, evil);
    add(&r, put_run("evil.jsonl", start, 1, more));
    add(&r, put_run("b.jsonl", "", 2, ""));
    free(r.runs[1].name);
    r.runs[1].name = strdup("<script>alert(3)</script>\xE2\x80\xAE");
    char *page = page_of(&r);
    assert_null(strstr(page, "<script>alert"));
    assert_null(strstr(page, "<img"));
    assert_null(strstr(page, "\xE2\x80\xAE"));
    assert_null(strstr(page, "\xE2\x81\xA6"));
    assert_non_null(strstr(page, "1 of the 2 files has no record of the options"));
    free(page);
    runs_free(&r);
}

/* The functions of the page's script, run by an interpreter of JavaScript, on values known by hand. */
static void test_script(void **state) {
    (void)state;
    FILE *f = fopen(files_path("script.js"), "w");
    assert_non_null(f);
    fputs(plot_js(), f);
    fputs(
        "function same(a, b) { a = JSON.stringify(a); b = JSON.stringify(b); if (a !== b) throw new Error(a + ' is not ' + b); }\n"
        "var c = plot, line = {step: [1, 2, 3, 4], time: [0.5, 1, null, 2], value: [10, null, -1, 1000]};\n"
        "same(c.distance(10, 5), 2); same(c.distance(7, 5), 2); same(c.distance(4.9, 5), 1); same(c.distance(26, 5), 10);\n"
        "same(c.points(line, 'step', false, -Infinity, Infinity), [[1, 10], [3, -1], [4, 1000]]);\n"
        "same(c.points(line, 'step', true, -Infinity, Infinity), [[1, 10], [4, 1000]]);\n"
        "same(c.points(line, 'step', false, 2, 3), [[3, -1]]);\n"
        "same(c.points(line, 'time', false, 0, 9), [[0.5, 10], [2, 1000]]);\n"
        "same(c.extent([[[1, 5], [2, -7]], [[9, 0]]], 0), [1, 9]); same(c.extent([[[1, 5], [2, -7]]], 1), [-7, 5]);\n"
        "same(c.extent([[], []], 0), null); same(c.extent([[[4, 1]]], 0), [2, 6]); same(c.extent([[[0, 1]]], 0), [-0.5, 0.5]);\n"
        "var s = c.scale(2, 4, 100, 0, false), l = c.scale(1, 100, 0, 200, true);\n"
        "same([s(2), s(3), s(4)], [100, 50, 0]); same([l(1), Math.round(l(10)), l(100)], [0, 100, 200]);\n"
        "same(c.scale(3, 3, 0, 10, false)(3), 5);\n"
        "same(c.ticks(0, 10, 5, false), [0, 2, 4, 6, 8, 10]); same(c.ticks(0.3, 2.2, 4, false), [0.5, 1, 1.5, 2]);\n"
        "same(c.ticks(0.5, 200, 5, true), [1, 10, 100]); same(c.ticks(1, 1e9, 5, true), [1, 100, 10000, 1000000, 100000000]);\n"
        "same(c.ticks(20, 40, 5, true), [20, 25, 30, 35, 40]);\n"
        "same([c.say(0.12345, true), c.say(1234.5), c.say(2e7), c.say(0), c.say(1e-5)], "
        "['12.35%', '1235', '2.0e+7', '0', '1.0e-5']);\n"
        "same(c.path([[2, 2], [4, 4]], s, s), 'M100.0 100.0L0.0 0.0'); same(c.path([[2, 2]], s, s), 'M100.0 100.0h0');\n",
        f);
    assert_int_equal(fclose(f), 0);
    char command[300];
    snprintf(command, sizeof command, "duk %s >&2", files_path("script.js")); /* Debian's duktape: scripts/setup.sh */
    assert_int_equal(system(command), 0);
}

/* data/show writes the page, and nothing over its own input. */
static void test_program(void **state) {
    (void)state;
    const char *a = put_run("p.jsonl", "", 1, "");
    char command[600];
    snprintf(command, sizeof command, "./data/show --report %s.html %s %s && grep -q '</html>' %s.html", a, a, a, a);
    assert_int_equal(system(command), 0);
    static const char *const wrong[] = {"%s %s", "%s.html", "%s.html %s --records 1", "%s.html - %s --json"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char options[300];
        snprintf(options, sizeof options, wrong[i], a, a);
        snprintf(command, sizeof command, "./data/show --report %s 2>/dev/null </dev/null", options);
        assert_int_equal(WEXITSTATUS(system(command)), 2);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_runs),   cmocka_unit_test(test_chain),   cmocka_unit_test(test_evaluations),
        cmocka_unit_test(test_one_option), cmocka_unit_test(test_refused), cmocka_unit_test(test_cut),
        cmocka_unit_test(test_hostile),    cmocka_unit_test(test_script),  cmocka_unit_test(test_program)};
    return cmocka_run_group_tests(tests, files_setup, files_teardown);
}
