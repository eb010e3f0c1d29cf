/* test_metrics.c - metrics: lines and their numbers, resuming, samples, event files against bytes that TensorBoard
 * wrote, the report's structure and escaping, charts, the progress line, and outputs that cannot be written. */
#include "../llmc/base/clock.h"             /* clock_date, clock_seconds */
#include "../llmc/base/error.h"             /* Error, xstrdup, xcalloc, xmalloc */
#include "../llmc/base/json_text.h"         /* json_number_text, json_dump_short, json_finite */
#include "../llmc/base/text.h"              /* utf8_copy */
#include "../llmc/report/chart.h"           /* chart_round, chart_smooth, chart_path, Chart, ... */
#include "../llmc/report/chart_data.h"      /* chart_data */
#include "../llmc/report/chart_text.h"      /* chart_tick, chart_value */
#include "../llmc/report/curve_catalogue.h" /* curve_catalogue, curve_info */
#include "../llmc/report/curves.h"          /* curve_list, CurveList */
#include "../llmc/report/history.h"         /* history_value, history_free, History, history_line, ... */
#include "../llmc/report/progress.h"        /* progress_draw, progress_duration */
#include "../llmc/report/report.h"          /* report_page */
#include "../llmc/report/report_samples.h"  /* REPORT_PROMPTS */
#include "../llmc/report/run_facts.h"       /* RUN_SAMPLING, phase_enter, process_age, run_file, ... */
#include "../llmc/report/tensorboard.h"     /* tensorboard_crc32c, tensorboard_histogram, tensorboard_step, ... */
#include "files.h"                          /* files_path, occurrences, text_of, files_assert_error, ... */
#include "page.h"                           /* assert_page */

#include "../llmc/base/random.h"    /* Random, random_start, random_normal, random_below, ... */
#include "../llmc/report/metrics.h" /* Metrics, metrics_open, metrics_set, metrics_sample, ... */

/* ---- fixtures ---- */

/* Opens a run that writes metrics.jsonl and report.html into the test's directory. */
static void start(Metrics *m, int64_t resume_step) {
    Error e = {""};
    if (!metrics_open(m, "train_grpo", files_path("metrics.jsonl"), NULL, files_path("report.html"), resume_step, &e))
        fail_msg("%s", e.text);
}

static void step(Metrics *m, int64_t at, double loss) {
    Error e = {""};
    metrics_set(m, "loss", loss);
    if (!metrics_step(m, at, &e)) fail_msg("%s", e.text);
}

static void finish(Metrics *m) {
    Error e = {""};
    if (!metrics_close(m, &e)) fail_msg("%s", e.text);
}

static void clear(void) {
    unlink(files_path("metrics.jsonl"));
    unlink(files_path("metrics.samples.jsonl"));
    unlink(files_path("report.html"));
}

/* ---- lines ---- */

static void test_lines(void **state) {
    (void)state;
    clear();
    Metrics m;
    start(&m, -1);
    metrics_set(&m, "loss", 2);
    metrics_set(&m, "loss", 0.1); /* the later value is kept */
    metrics_set(&m, "learning_rate", 3e-4);
    metrics_set(&m, "kl", NAN);
    metrics_set(&m, "grad_norm", INFINITY);
    metrics_set(&m, "odd \"key\"\n\xff", -1);
    metrics_set(&m, "num_tokens", 123456789012);
    Error e;
    assert_true(metrics_step(&m, 7, &e));
    assert_true(metrics_step(&m, 8, &e)); /* nothing carries over from the line before */
    finish(&m);
    char *text = text_of(files_path("metrics.jsonl"));
    double time;
    int at;
    assert_int_equal(sscanf(text, "{\"step\":7,\"time\":%lf%n", &time, &at), 1);
    assert_true(fabs(time - clock_date()) < 60);
    const char *expected = ",\"loss\":0.1,\"learning_rate\":0.0003,\"kl\":null,\"grad_norm\":null,"
                           "\"odd \\\"key\\\"\\n\xEF\xBF\xBD\":-1,\"num_tokens\":123456789012}\n{\"step\":8,\"time\":";
    assert_memory_equal(text + at, expected, strlen(expected));
    assert_int_equal(occurrences(text, "\n"), 2);
    free(text);
}

static void test_numbers_read_back(void **state) {
    (void)state;
    char text[32];
    Random r = random_start(1, 2);
    for (int i = 0; i < 20000; i++) {
        const uint64_t bits = random_next(&r);
        double value, back;
        memcpy(&value, &bits, sizeof value);
        if (i % 2) value = (double)(float)random_normal(&r);
        json_number_text(value, text);
        if (!isfinite(value)) {
            assert_string_equal(text, "null");
            continue;
        }
        json_t *json = json_loads(text, JSON_DECODE_ANY, NULL); /* valid JSON, and the same bits */
        assert_non_null(json);
        back = json_number_value(json);
        assert_memory_equal(&back, &value, sizeof value);
        json_decref(json);
    }
    json_number_text(1, text);
    assert_string_equal(text, "1");
    json_number_text(1e-5, text);
    assert_string_equal(text, "1e-05");
    json_number_text(1.0 / 3, text);
    assert_string_equal(text, "0.3333333333333333");
}

/* A JSON text keeps its values, its kinds of number and its strings, with numbers as short as possible. */
static void test_short_json(void **state) {
    (void)state;
    json_t *in = json_pack("{s:f, s:f, s:f, s:i, s:b, s:s, s:[f, f], s:n}", "a", 0.1, "b", -0.0071030907020031009, "c",
                           1e30, "i", 12345678, "t", 1, "text 0.10000000000000001 \\\" 1.50",
                           "x\"0.10000000000000001\\", "l", 2.0, 1.0 / 3, "n");
    char *text = json_dump_short(in, JSON_COMPACT | JSON_SORT_KEYS);
    assert_string_equal(text, "{\"a\":0.1,\"b\":-0.007103090702003101,\"c\":1e+30,\"i\":12345678,\"l\":[2.0,"
                              "0.3333333333333333],\"n\":null,\"t\":true,"
                              "\"text 0.10000000000000001 \\\\\\\" 1.50\":\"x\\\"0.10000000000000001\\\\\"}");
    json_t *out = json_loads(text, 0, NULL);
    assert_true(json_equal(in, out));
    free(text);
    json_decref(in), json_decref(out);
    /* jansson writes exponents without the zero and the plus: these become longer */
    in = json_pack("[f, f, f, f]", 3.3333333333333335e-5, 1e22, 6.103515625e-05, -2e20);
    text = json_dump_short(in, JSON_COMPACT);
    assert_string_equal(text, "[3.3333333333333335e-05,1e+22,6.103515625e-05,-2e+20]");
    out = json_loads(text, 0, NULL);
    assert_true(json_equal(in, out));
    free(text);
    json_decref(in), json_decref(out);
}

/* Parts of a line that are a mean over nothing are left out; words that contain nan are not. */
static void test_lines_without_nan(void **state) {
    (void)state;
    const char *const cases[][2] = {{"margin -nan | kl 0.000", "kl 0.000"},
                                    {"loss 1 | accuracy  nan% | 0.1 s", "loss 1 | 0.1 s"},
                                    {"a 1 | b nan", "a 1"},
                                    {"a nan | b -nan", ""},
                                    {"banana 1 | nano nan1 | (nan) | c 2", "banana 1 | nano nan1 | c 2"},
                                    {"x nan | y 1 | z nan | w 2", "y 1 | w 2"},
                                    {"", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[64];
        snprintf(line, sizeof line, "%s", cases[i][0]);
        metrics_drop_nan(line);
        assert_string_equal(line, cases[i][1]);
    }
}

static void test_standard_output(void **state) {
    (void)state;
    Metrics m;
    Error e = {""};
    files_catch_stdout(files_path("caught"));
    const bool ok = metrics_open(&m, "p", "-", NULL, NULL, -1, &e);
    metrics_set(&m, "a", 1);
    const bool stepped = ok && metrics_step(&m, 1, &e);
    metrics_sample(&m, "before", "p", "c", NULL, 1);
    const bool closed = stepped && metrics_close(&m, &e);
    fflush(stdout);
    files_restore(1);
    assert_true(ok && stepped && closed);
    char *text = text_of(files_path("caught"));
    assert_int_equal(occurrences(text, "\n"), 1);
    assert_memory_equal(text, "{\"step\":1,\"time\":", 17);
    free(text);
}

/* ---- resuming ---- */

static void test_resume(void **state) {
    (void)state;
    clear();
    Metrics m;
    start(&m, -1);
    metrics_sample(&m, "before", "2+2=", "5", "4", 0);
    for (int i = 1; i <= 10; i++) {
        step(&m, i, 1.0 / i);
        if (i == 3 || i == 9) metrics_sample(&m, i == 3 ? "step 3" : "step 9", "2+2=", "3", "4", NAN);
    }
    metrics_sample(&m, "after", "2+2=", "4", "4", 1);
    finish(&m);

    char *all = text_of(files_path("metrics.jsonl"));
    FILE *f = fopen(files_path("metrics.jsonl"), "a"); /* a kill truncated the last line */
    fputs("{\"step\":11,\"time\":17", f);
    fclose(f);

    start(&m, 6);
    assert_int_equal(m.history.series[0].count, 6);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(m.history.series[0].steps[i], i + 1);
        assert_true(m.history.series[0].values[i] == 1.0 / (i + 1));
    }
    assert_int_equal(m.history.sample_count, 2); /* before and at step 3: step 9 is after 6, and 6 is not the end */
    metrics_sample(&m, "before", "2+2=", "again", "4", 0);
    assert_int_equal(m.history.sample_count, 2);
    step(&m, 7, 70);
    metrics_sample(&m, "after", "2+2=", "4, at last", "4", 1);
    finish(&m);

    char *text = text_of(files_path("metrics.jsonl"));
    assert_int_equal(occurrences(text, "\n"), 7);
    char *six = all; /* the first six lines are unchanged, byte for byte */
    for (int i = 0; i < 6; i++) six = strchr(six, '\n') + 1;
    assert_memory_equal(text, all, six - all);
    assert_non_null(strstr(text + (six - all), "{\"step\":7,"));
    assert_non_null(strstr(text + (six - all), "\"loss\":70}"));
    free(text);
    free(all);

    text = text_of(files_path("metrics.samples.jsonl"));
    assert_int_equal(occurrences(text, "\n"), 3);
    assert_non_null(
        strstr(text, "\"when\":\"before\",\"prompt\":\"2+2=\",\"completion\":\"5\",\"answer\":\"4\",\"reward\":0}"));
    assert_non_null(strstr(text, "{\"step\":3,\"when\":\"step 3\""));
    assert_non_null(strstr(text, "\"completion\":\"4, at last\""));
    free(text);
    text = text_of(files_path("report.html"));
    assert_non_null(strstr(text, "<mark>4</mark>, at last"));
    assert_non_null(strstr(text, "<b>7</b> steps"));
    free(text);
}

static void test_resume_without_files(void **state) {
    (void)state;
    clear();
    Metrics m;
    start(&m, 100);
    assert_int_equal(m.history.series_count, 0);
    step(&m, 101, 1);
    finish(&m);
    char *text = text_of(files_path("report.html"));
    assert_non_null(strstr(text, "<b>101 to 101</b>"));
    free(text);
}

static void test_resume_broken(void **state) {
    (void)state;
    static const struct {
        const char *file, *why;
    } table[] = {{"{\"step\":1,\"time\":1}\nnot json\n{\"step\":2,\"time\":2}\n", "line 2: not JSON"},
                 {"[1]\n", "line 1: a line without an integer \"step\""},
                 {"{\"step\":1}\n{\"step\":\"2\"}\n", "line 2: a line without an integer \"step\""},
                 {"{\"step\":1,\"loss\":\"\xff\"}\n", "line 1: not JSON"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        clear();
        files_put(files_path("metrics.jsonl"), table[i].file, strlen(table[i].file));
        Metrics m;
        Error e = {""};
        assert_false(metrics_open(&m, "p", files_path("metrics.jsonl"), NULL, NULL, 5, &e));
        files_assert_error(&e, table[i].why);
        files_assert_error(&e, files_path("metrics.jsonl"));
        files_assert_content(files_path("metrics.jsonl"), table[i].file, strlen(table[i].file));
    }
    clear();
    const char *bad = "{\"step\":0,\"when\":\"before\"}\n";
    files_put(files_path("metrics.samples.jsonl"), bad, strlen(bad));
    Metrics m;
    Error e = {""};
    assert_false(metrics_open(&m, "p", files_path("metrics.jsonl"), NULL, NULL, 5, &e));
    files_assert_error(&e, "metrics.samples.jsonl: line 1: not a sample");
}

/* A new run does not touch an earlier run's files before its first output. */
static void test_new_run(void **state) {
    (void)state;
    clear();
    Metrics m;
    start(&m, -1);
    metrics_sample(&m, "before", "p", "old", NULL, 0);
    step(&m, 1, 1);
    finish(&m);
    size_t n;
    uint8_t *old = files_get(files_path("metrics.jsonl"), &n);
    start(&m, -1);
    files_assert_content(files_path("metrics.jsonl"), old, n);
    metrics_free(&m); /* as exit() does */
    files_assert_content(files_path("metrics.jsonl"), old, n);
    free(old);
    start(&m, -1);
    step(&m, 5, 2);
    char *text = text_of(files_path("metrics.jsonl"));
    assert_memory_equal(text, "{\"step\":5,", 10);
    assert_int_equal(occurrences(text, "\n"), 1);
    free(text);
    assert_int_equal(access(files_path("metrics.samples.jsonl"), F_OK), -1);
    finish(&m);
}

/* ---- outputs that cannot be written ---- */

static void test_unwritable(void **state) {
    (void)state;
    clear();
    Metrics m;
    Error e = {""};
    const char *nowhere = files_path("no/such/file"), *folder = files_directory;
    assert_false(metrics_open(&m, "p", nowhere, NULL, NULL, -1, &e));
    files_assert_error(&e, "no/such/file: cannot write: No such file or directory");
    assert_false(metrics_open(&m, "p", folder, NULL, NULL, -1, &e));
    files_assert_error(&e, "cannot write: Is a directory");
    assert_false(metrics_open(&m, "p", NULL, NULL, nowhere, -1, &e));
    files_assert_error(&e, "no/such/file: cannot");
    files_put(files_path("file"), "x", 1);
    assert_false(metrics_open(&m, "p", NULL, files_path("file/tb"), NULL, -1, &e));
    files_assert_error(&e, "file/tb: cannot create the folder");

    /* a full disk */
    assert_true(metrics_open(&m, "p", "/dev/full", NULL, NULL, -1, &e));
    metrics_set(&m, "loss", 1);
    assert_false(metrics_step(&m, 1, &e));
    files_assert_error(&e, "/dev/full: cannot write: No space left on device");
    metrics_free(&m);
    assert_true(metrics_open(&m, "p", NULL, NULL, "/dev/full", -1, &e));
    assert_false(metrics_close(&m, &e));
    files_assert_error(&e, "/dev/full: cannot write: No space left on device");

    /* samples have no Error of their own: the next step reports it */
    assert_int_equal(mkdir(files_path("metrics.samples.jsonl"), 0755), 0);
    start(&m, 0);
    metrics_sample(&m, "after", "p", "c", NULL, 1);
    assert_false(metrics_step(&m, 1, &e));
    files_assert_error(&e, "metrics.samples.jsonl: cannot write: Is a directory");
    assert_false(metrics_close(&m, &e));
    rmdir(files_path("metrics.samples.jsonl"));
}

/* ---- TensorBoard ---- */

static void test_crc32c(void **state) {
    (void)state;
    const uint8_t zeros[32] = {0};
    assert_int_equal(tensorboard_crc32c("123456789", 9), 0xe3069283u); /* the check value in the catalogue of CRCs */
    assert_int_equal(tensorboard_crc32c(zeros, 32), 0x8a9136aau);      /* RFC 3720, B.4 */
    assert_int_equal(tensorboard_crc32c("", 0), 0);
}

/* The only file in the folder, from byte `from` on, in hexadecimal. */
static char *event_file(const char *folder, char *name, size_t size) {
    DIR *d = opendir(folder);
    char path[1024];
    name[0] = 0;
    for (const struct dirent *entry; (entry = readdir(d));)
        if (entry->d_name[0] != '.') snprintf(name, size, "%s", entry->d_name);
    closedir(d);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    size_t n;
    uint8_t *data = files_get(path, &n);
    char *hex = (char *)xcalloc(2 * n + 1, 1);
    for (size_t i = 0; i < n; i++) sprintf(hex + 2 * i, "%02x", data[i]);
    free(data);
    return hex;
}

/* The bytes must equal those that TensorBoard's own classes write (dev/golden/golden_tensorboard.py). */
static void test_tensorboard_golden(void **state) {
    (void)state;
    TensorBoard t;
    Error e = {""};
    const double wall = 1764000000.25;
    const char *folder = files_path("tb/deep");
    char longest[201] = "";
    memset(longest, 'k', 200);
    const char *const keys[] = {"loss", "nothing", "rewards/verify/mean", "eval_accuracy"}, *const one[] = {longest};
    assert_true(tensorboard_open(&t, folder, wall, 7, &e));
    assert_true(tensorboard_step(&t, wall, 300, keys, (const double[]){0.6931472, NAN, -1.5e-9, 1}, 4, &e));
    assert_true(tensorboard_step(&t, wall, (int64_t)1 << 40, one, (const double[]){3}, 1, &e));
    assert_true(tensorboard_text(&t, wall, 12, "samples/1", "2+3=\n\n    5 \xc3\xa4", &e));
    json_t *options = json_pack("{s:s, s:s}", "beta", "0.04", "input", "a b.shard");
    assert_true(tensorboard_hparams(&t, wall, options, &e));
    json_decref(options);
    assert_true(tensorboard_histogram(&t, wall, 13, "rewards/verify",
                                      (const double[]){0, 1, 1, NAN, 0.25, -2, INFINITY}, 7, &e));
    assert_true(tensorboard_histogram(&t, wall, 14, "completions/length", (const double[]){8, 8}, 2, &e));
    assert_true(tensorboard_histogram(&t, wall, 15, "none", (const double[]){NAN}, 1, &e));
    assert_true(tensorboard_close(&t, &e));
    char name[300], *written = event_file(folder, name, sizeof name);
    assert_memory_equal(name, "events.out.tfevents.1764000000.", 31);
    char *golden = text_of("tests/golden/tensorboard.txt"), *to = golden;
    for (const char *from = golden; *from; from++)
        if (*from != '\n') *to++ = *from;
    *to = 0;
    assert_string_equal(written, golden);
    free(written);
    free(golden);
}

static void test_tensorboard_run(void **state) {
    (void)state;
    Metrics m;
    Error e = {""};
    char name[300];
    assert_true(metrics_open(&m, "p", NULL, files_path("run"), NULL, -1, &e));
    char *first = event_file(files_path("run"), name, sizeof name);
    step(&m, 1, 1);
    char *second = event_file(files_path("run"), name, sizeof name); /* at once, not when a buffer is full */
    assert_true(strlen(second) > strlen(first));
    assert_memory_equal(first, second, strlen(first));
    assert_non_null(strstr(second, "747261696e2f6c6f7373")); /* train/loss */
    free(first);
    free(second);
    finish(&m);
}

/* ---- the report ---- */

static char *page_of(const History *h, bool running) {
    char *page;
    size_t n;
    FILE *f = open_memstream(&page, &n);
    report_page(f, h, running);
    fclose(f);
    assert_page(page, n);
    return page;
}

static void test_report_empty(void **state) {
    (void)state;
    History h = {0};
    char *page = page_of(&h, false);
    assert_non_null(strstr(page, "No step has been logged"));
    free(page);
    h.program = xstrdup("train_sft");
    history_line(&h, 1, 1764000000);
    history_value(&h, "never", 1, NAN);
    page = page_of(&h, true);
    assert_non_null(strstr(page, "Supervised fine-tuning"));
    assert_non_null(strstr(page, "no finite value"));
    assert_non_null(strstr(page, "running for"));
    assert_non_null(strstr(page, "<meta http-equiv='refresh' content='60'>")); /* only as long as the run goes on */
    free(page);
    page = page_of(&h, false);
    assert_null(strstr(page, "refresh"));
    free(page);
    history_free(&h);
}

static void test_report_one_step(void **state) {
    (void)state;
    History h = {0};
    history_line(&h, 1, 1764000000);
    history_value(&h, "reward", 1, 0.5);
    char *page = page_of(&h, false);
    assert_non_null(strstr(page, "<b>1</b> step<"));
    assert_non_null(strstr(page, "h0'/>")); /* an isolated point is drawn */
    free(page);
    history_free(&h);
}

static void test_report_escapes(void **state) {
    (void)state;
    History h = {.program = xstrdup("</title><script>alert(0)</script>")};
    const char *evil =
        "'\"></pre></td></script><script>alert(1)</script>&amp;\x01\x7f\xc2\x85\xff\xed\xa0\x80\xf0\x9f\x98";
    history_line(&h, 1, 1);
    history_line(&h, 2, 2);
    history_value(&h, evil, 1, 1);
    history_value(&h, evil, 2, 1e300);
    history_value(&h, "eval_loss", 1, -1e300);
    history_row(&h.header, evil, NULL, NULL);
    history_row(&h.config, evil, NULL, NULL);
    history_row(&h.config, evil, evil, NULL);
    history_row(&h.config, "unset", "", NULL);
    history_row(&h.final, evil, evil, evil);
    history_sample(&h, 0, "before", evil, evil, evil, 0);
    history_sample(&h, 0, evil, evil, evil, NULL, NAN);
    history_sample(&h, 0, "after", evil, evil, "</script>", 1);
    char *page = page_of(&h, false);
    assert_null(strstr(page, "<script>alert"));
    assert_null(strstr(page, "&amp;amp;&amp;")); /* escaped once */
    assert_non_null(strstr(page, "&amp;amp;\\x01\\x7f\\x85\xEF\xBF\xBD"));
    free(page);
    history_free(&h);
}

static void test_report_samples(void **state) {
    (void)state;
    History h = {0};
    history_line(&h, 1, 1);
    history_sample(&h, 1, "after", "3+4=", "it is 7, so 7", "7", 1); /* the order of arrival does not matter */
    history_sample(&h, 0, "before", "1+1=", "3", "2", 0);
    history_sample(&h, 0, "before", "3+4=", "8", "7", 0.1);
    history_sample(&h, 1, "step 1", "3+4=", "midway", "7", 0.6);
    history_sample(&h, 1, "after", "1+1=", "2", "2", 1.1);
    history_sample(&h, 1, "after", "1+1=", "two", "2", NAN);
    char *page = page_of(&h, false);
    const char *first = strstr(page, "id='prompt-1'"), *second = strstr(page, "id='prompt-2'");
    assert_true(first && second && first < second);
    const char *before = strstr(first, ">8</pre>"), *after = strstr(first, "it is 7, so <mark>7</mark>");
    assert_true(before && after && before < after && after < second);
    assert_true(strstr(first, "take bad") < before);
    assert_true(strstr(first, "take ok") < after);
    const char *between = strstr(first, "<details><summary>in between");
    assert_true(between && between < second && strstr(between, "take mid") < second);
    assert_null(strstr(second, "in between"));
    assert_non_null(strstr(second, "not scored"));
    assert_non_null(strstr(page, "<span>before</span><span><b>0 of 2</b> right"));
    assert_non_null(strstr(page, "<span>after</span><span><b>2 of 2</b> right"));
    free(page);
    history_free(&h);

    h = (History){0}; /* many prompts, long completions */
    char *longest = (char *)xmalloc(50001);
    for (int i = 0; i < 50000; i++) longest[i] = "\xc3\xa4"[i % 2];
    longest[50000] = 0;
    for (int i = 0; i < 200; i++) {
        char prompt[32];
        snprintf(prompt, sizeof prompt, "prompt %d", i);
        history_sample(&h, 0, "before", prompt, longest, "x", 0);
    }
    page = page_of(&h, false);
    assert_int_equal(occurrences(page, "<article"), REPORT_PROMPTS);
    assert_non_null(strstr(page, "and 44000 bytes more"));
    assert_non_null(strstr(page, "136 further prompts are not shown"));
    assert_true(strlen(page) < 1000000);
    free(page);
    free(longest);
    history_free(&h);
}

static void test_report_final(void **state) {
    (void)state;
    History h = {0};
    history_line(&h, 1, 1);
    history_row(&h.final, "Accuracy", "31.2 %", "87.5 %");
    history_row(&h.final, "Length", "10", "7.5");
    history_row(&h.final, "Units differ", "10 s", "7 ms");
    history_row(&h.final, "Only after", NULL, "12");
    history_row(&h.final, "Words", "none", "many");
    char *page = page_of(&h, false);
    assert_non_null(strstr(page, "<td class='change'>+56.3 points</td><td class='bar'><svg"));
    assert_non_null(strstr(page, "<td class='change'>\xE2\x88\x92"
                                 "2.5</td>"));
    assert_int_equal(occurrences(page, "<td class='change'></td>"), 3);
    free(page);
    history_free(&h);
}

/* Marks that turn the direction of text are shown as escapes, in every place of the page. */
static void test_report_directions(void **state) {
    (void)state;
    const char *evil = "a\xE2\x80\xAE"
                       "b\xE2\x81\xA6"
                       "c\xE2\x80\xAC"
                       "d\xE2\x82\xAC";
    History h = {.program = xstrdup(evil)};
    history_line(&h, 1, 1);
    history_value(&h, evil, 1, 1);
    history_row(&h.header, evil, NULL, NULL);
    history_row(&h.config, evil, evil, NULL);
    history_row(&h.final, evil, evil, evil);
    history_sample(&h, 0, evil, evil, evil, evil, 0);
    history_pair(&h, 0, evil, evil, evil, evil, 1, 0);
    history_start(&h, json_pack("{s:s, s:[s], s:s, s:[{s:s, s:s}], s:[{s:s, s:{s:s}}]}", "record", "start", "command",
                                evil, "host", evil, "files", "path", evil, "option", evil, "lineage", "stage", evil,
                                "options", evil, evil));
    history_end(&h, json_pack("{s:s, s:[{s:s, s:i}]}", "status", evil, "warnings", "text", evil, "times", 3));
    char *page = page_of(&h, false);
    assert_null(strstr(page, "\xE2\x80\xAE"));
    assert_null(strstr(page, "\xE2\x81\xA6"));
    assert_null(strstr(page, "\xE2\x80\xAC"));
    assert_true(occurrences(page, "a\\u202eb\\u2066c\\u202cd\xE2\x82\xAC") >= 20);
    free(page);
    history_free(&h);
}

/* Values that never change are listed on one line, all others are drawn. */
static void test_report_constants(void **state) {
    (void)state;
    History h = {0};
    for (int64_t at = 1; at <= 3; at++) {
        history_line(&h, at, (double)at);
        history_value(&h, "learning_rate", at, 0.125);
        history_value(&h, "loss", at, at == 2 ? 1.5 : 1);
        history_value(&h, "grad_norm", at, at == 2 ? NAN : 1);
        history_value(&h, "own_name/x", at, 7);
    }
    char *page = page_of(&h, false);
    assert_int_equal(occurrences(page, "<figure"), 2);
    assert_non_null(strstr(page, "The same at every step: Learning rate <code>learning_rate</code> <b>0.125</b>.</p>"));
    assert_non_null(strstr(page, "The same at every step: Own name, x <code>own_name/x</code> <b>7</b>.</p>"));
    assert_non_null(strstr(page, "<h4>Loss <code>loss</code></h4><p>The objective that training minimises.</p>"));
    free(page);
    history_free(&h);
}

/* Every description of the catalogue is a sentence, and no earlier row takes the names that a row is for. */
static void test_catalogue(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof curve_catalogue / sizeof *curve_catalogue; i++) {
        const char *about = curve_catalogue[i].about;
        assert_true(isupper((unsigned char)about[0]) && about[strlen(about) - 1] == '.');
        char name[64];
        int rank;
        assert_true(strlen(curve_catalogue[i].pattern) < sizeof name);
        strcpy(name, curve_catalogue[i].pattern);
        for (char *c = name; *c; c++)
            if (*c == '*') *c = 'x';
        curve_info(name, &rank);
        if (rank != (int)i) fail_msg("%s has the row of %s", name, curve_catalogue[rank].pattern);
    }
}

static void test_report_pairs(void **state) {
    (void)state;
    History h = {0};
    history_line(&h, 1, 1);
    history_pair(&h, 0, "before", "2+2=", "4", "5", -1, 2.5);
    history_pair(&h, 0, "before", "3+3=", "6", "9", 1, 0.5);
    history_pair(&h, 9, "after", "2+2=", "4", "5", 1.25, -3);
    history_pair(&h, 9, "after", "3+3=", "6", "9", NAN, 0.5);
    char *page = page_of(&h, false);
    assert_int_equal(occurrences(page, "<article"), 2);
    assert_non_null(strstr(page, "<td>before</td><td>-1</td><td>2.500</td><td>-3.500</td><td class='wrong'>"));
    assert_non_null(strstr(page, "<td>after</td><td>1.250</td><td>-3</td><td>4.250</td><td class='okay'>"));
    assert_non_null(strstr(page, "not scored"));
    assert_non_null(strstr(page, "<span>before</span><span><b>1 of 2</b> in the right order"));
    assert_non_null(strstr(page, "<span>after</span><span><b>1 of 2</b> in the right order"));
    free(page);
    history_free(&h);
}

static json_t *step_of(const char *text, double label, double score) {
    return json_pack("{s:s, s:f, s:o}", "text", text, "label", label, "score", json_finite(score));
}

/* Solutions in the samples file, in the report before and after, and after resuming: scores ln 3, -ln 4 are 75 % and 20 %. */
static void test_report_solutions(void **state) {
    (void)state;
    clear();
    Metrics m;
    start(&m, -1);
    metrics_solution(&m, "before", "1+2+3=", json_pack("[o, o]", step_of("<3>", 1, -log(4)), step_of("6", 0.25, NAN)));
    step(&m, 1, 1);
    step(&m, 2, 1);
    metrics_solution(&m, "after",
                     "1+2+3=", json_pack("[o, o]", step_of("<3>", 1, log(3)), step_of("6", 0.25, -log(4))));
    finish(&m);
    char *page = text_of(files_path("report.html"));
    assert_page(page, strlen(page));
    assert_int_equal(occurrences(page, "<article"), 1);
    assert_non_null(strstr(page, "<a href='#solutions'>"));
    assert_non_null(
        strstr(page, "<td><pre>&lt;3&gt;</pre></td><td>right</td><td class='wrong'>\xE2\x9C\x97 20.0%<svg"));
    assert_non_null(strstr(page, "</td><td class='okay'>75.0%<svg"));
    assert_non_null(strstr(page, "<td>25.0% right</td><td class=''>\xE2\x80\x93</td><td class='okay'>20.0%<svg"));
    assert_non_null(strstr(page, "width='43.5'")); /* 58 x 75 % */
    assert_non_null(strstr(page, "<td>minimum</td><td></td><td class=''>\xE2\x80\x93</td><td class=''>20.0%<svg"));
    assert_non_null(strstr(page, "<td>product</td><td></td><td class=''>\xE2\x80\x93</td><td class=''>15.0%<svg"));
    assert_non_null(strstr(page, "<span>before</span><span><b>0 of 2</b> steps"));
    assert_non_null(strstr(page, "<span>after</span><span><b>2 of 2</b> steps"));
    free(page);
    start(&m, 1); /* the solutions from before the first step are kept, those of the end are not */
    assert_int_equal(m.history.solution_count, 1);
    assert_true(json_is_null(json_object_get(json_array_get(m.history.solutions[0].steps, 1), "score")));
    metrics_solution(&m, "before", "again", json_pack("[o]", step_of("x", 1, 0)));
    assert_int_equal(m.history.solution_count, 1);
    step(&m, 2, 1);
    finish(&m);
    static const char *const bad[] = {"[]",
                                      "[1]",
                                      "[{\"text\":\"a\",\"label\":2,\"score\":0}]",
                                      "[{\"text\":\"a\",\"label\":1}]",
                                      "[{\"label\":1,\"score\":0}]",
                                      "{\"a\":1}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char line[200];
        Error e = {""};
        snprintf(line, sizeof line, "{\"step\":0,\"when\":\"before\",\"prompt\":\"p\",\"steps\":%s}\n", bad[i]);
        files_put(files_path("metrics.samples.jsonl"), line, strlen(line));
        assert_false(metrics_open(&m, "p", files_path("metrics.jsonl"), NULL, NULL, 5, &e));
        files_assert_error(&e, "metrics.samples.jsonl: line 1: not a solution");
    }
}

/* The layers of a mixture: their edges are sums of the shares, 188 units high in all, from 12 to 200. */
static void test_report_mix(void **state) {
    (void)state;
    History h = {0};
    for (int64_t at = 1; at <= 3; at++) {
        history_line(&h, at, (double)at);
        history_value(&h, "loss", at, 1.0 / (double)at);
        history_value(&h, "mix/a<b/share", at, at == 1 ? 1 : 0.75);
        history_value(&h, "mix/a<b/epoch", at, 0.5 * (double)at);
        history_value(&h, "mix/c/share", at, at == 1 ? 0 : 0.25);
        history_value(&h, "mix/c/epoch", at, 2 * (double)at);
    }
    char *page = page_of(&h, false);
    assert_page(page, strlen(page));
    assert_int_equal(occurrences(page, "<figure"), 1); /* no curves of the mixture's own */
    assert_non_null(strstr(page, "<a href='#mixture'>"));
    assert_non_null(strstr(page, "d='M52.0 12.0L211.0 59.0L370.0 59.0L370.0 200.0L211.0 200.0L52.0 200.0Z'"));
    assert_non_null(strstr(page, "d='M52.0 12.0L211.0 12.0L370.0 12.0L370.0 59.0L211.0 59.0L52.0 12.0Z'"));
    assert_non_null(strstr(page, "</i>a&lt;b</td><td>75.0%</td><td>1.500</td>"));
    assert_non_null(strstr(page, "</i>c</td><td>25.0%</td><td>6</td>"));
    free(page);
    history_free(&h);
    for (int64_t at = 1; at <= 2; at++) { /* names are cut between characters; the files after the 26th are curves */
        char key[40];
        history_line(&h, at, (double)at);
        history_value(&h, "mix/aaaaaaaaaaaaaaaaaaaaaaa\xC3\xA9z/share", at, 0.5);
        for (int k = 1; k < 30; k++) {
            snprintf(key, sizeof key, "mix/f%d/share", k);
            history_value(&h, key, at, 0.5 / 29);
        }
    }
    page = page_of(&h, false);
    assert_page(page, strlen(page));
    assert_non_null(strstr(page, "'>aaaaaaaaaaaaaaaaaaaaaaa</text>"));
    assert_non_null(strstr(page, "</i>f25</td>"));
    assert_null(strstr(page, "</i>f26</td>"));
    assert_int_equal(occurrences(page, "<figure"), 4);
    free(page);
    history_free(&h);
    history_line(&h, 1, 1); /* a single step has a table alone; a run without a mixture has no section */
    history_value(&h, "mix/c/share", 1, 1);
    page = page_of(&h, false);
    assert_int_equal(occurrences(page, "class='mix'"), 0);
    assert_non_null(strstr(page, "</i>c</td><td>100%</td><td>\xE2\x80\x93</td>"));
    free(page);
    history_free(&h);
    history_line(&h, 1, 1);
    history_value(&h, "loss", 1, 1);
    page = page_of(&h, false);
    assert_null(strstr(page, "id='mixture'"));
    free(page);
    history_free(&h);
}

/* ---- the records of a run ---- */

static void assert_close(double value, double expected, double gap) {
    if (!(fabs(value - expected) <= gap)) fail_msg("%.17g, expected %.17g", value, expected);
}

/* Returns record n of the file, to be freed with json_decref(). */
static json_t *record_of(const char *path, int n) {
    char *text = text_of(path), *line = text;
    for (int i = 0; i < n; i++) line = strchr(line, '\n') + 1;
    json_t *record = json_loadb(line, strcspn(line, "\n"), 0, NULL);
    assert_non_null(record);
    free(text);
    return record;
}

static const char *text_in(const json_t *record, const char *key) {
    const char *text = json_string_value(json_object_get(record, key));
    assert_non_null(text);
    return text;
}

/* The first and the last line describe the run; a resumed run writes another first one in place of the last. */
static void test_records(void **state) {
    (void)state;
    clear();
    Metrics m;
    const double began = clock_date();
    files_put(files_path("data"), "abc", 3);
    for (int part = 0; part < 2; part++) {
        start(&m, part ? 2 : -1);
        metrics_describe(&m, "1.2 (3)");
        metrics_fact(&m, "device", json_string("a device"));
        metrics_fact(&m, "files", json_pack("[o]", run_file("input", files_path("data"))));
        metrics_warn(&m, "careful, part %d", part);
        metrics_warn(&m, "careful, part %d", part);
        for (int i = 1; i <= 3; i++) {
            metrics_phase(&m, RUN_TRAINING);
            metrics_set(&m, "num_tokens", 100 * (2 * part + i));
            metrics_set(&m, "step_time", 0.5);
            step(&m, 2 * part + i, 1);
        }
        metrics_final(&m, "accuracy", "1 %", "2 %");
        metrics_result(&m, "peak_memory", json_integer(12345678));
        finish(&m);
    }
    const char *path = files_path("metrics.jsonl");
    char *text = text_of(path);
    assert_int_equal(occurrences(text, "\n"), 1 + 2 + 1 + 3 + 1);
    assert_int_equal(occurrences(text, "{\"record\":"), 3);
    free(text);
    json_t *first = record_of(path, 0), *second = record_of(path, 3), *last = record_of(path, 7);
    assert_string_equal(text_in(first, "record"), "start");
    assert_string_equal(text_in(first, "program"), "train_grpo");
    assert_string_equal(text_in(first, "version"), "1.2 (3)");
    assert_string_equal(text_in(first, "device"), "a device");
    assert_null(json_object_get(first, "resumed_step"));
    assert_int_equal(json_integer_value(json_object_get(second, "resumed_step")), 2);
    assert_true(fabs(json_number_value(json_object_get(first, "time")) - began) < 60);
    const char *program = json_string_value(json_array_get(json_object_get(first, "command"), 0));
    assert_true(program && strstr(program, "test_metrics"));
    const json_t *file = json_array_get(json_object_get(first, "files"), 0);
    assert_int_equal(json_integer_value(json_object_get(file, "bytes")), 3);
    assert_string_equal(text_in(file, "xxh3"), "78af5f94892f3950"); /* printf abc | xxhsum -H3 */
    assert_string_equal(text_in(last, "record"), "end");
    assert_string_equal(text_in(last, "status"), "finished");
    assert_int_equal(json_integer_value(json_object_get(last, "steps")), 5);
    assert_close(json_number_value(json_object_get(last, "tokens_per_second")), 500 / 2.5, 1e-9);
    assert_int_equal(json_integer_value(json_object_get(last, "peak_memory")), 12345678);
    const json_t *seconds = json_object_get(last, "seconds"), *warnings = json_object_get(last, "warnings");
    const char *key;
    json_t *value;
    double all = 0;
    json_object_foreach((json_t *)seconds, key, value) all += json_number_value(value);
    assert_true(all > 0 && all <= 1 + clock_date() - began + process_age());
    assert_true(json_object_get(seconds, "setup") && json_object_get(seconds, "training") &&
                !json_object_get(seconds, "reward"));
    assert_int_equal(json_array_size(warnings), 2); /* of the process, which both parts share here */
    assert_string_equal(text_in(json_array_get(warnings, 1), "text"), "careful, part 1");
    assert_int_equal(json_integer_value(json_object_get(json_array_get(warnings, 1), "times")), 2);
    json_decref(first), json_decref(second), json_decref(last);
    text = text_of(files_path("report.html"));
    assert_non_null(strstr(text, "<dt>version</dt><dd>1.2 (3)</dd>"));
    assert_non_null(strstr(text, "<dt>speed</dt><dd>200 tokens per second"));
    assert_non_null(strstr(text, "<dt>peak memory</dt><dd>12.3 MB</dd>"));
    assert_non_null(strstr(text, "78af5f94892f3950"));
    assert_non_null(strstr(text, "careful, part 1 <span class='soft'>(2 times)</span>"));
    assert_non_null(strstr(text, "The run was resumed 1 time"));
    free(text);
}

/* Standard input and a pipe have no bytes to hash, not even if a file is named "-". */
static void test_files_of_streams(void **state) {
    (void)state;
    static const char *const names[] = {"-", "pipe"};
    const int here = open(".", O_RDONLY | O_DIRECTORY);
    files_put(files_path("-"), "abc", 3);
    assert_int_equal(mkfifo(files_path("pipe"), 0600), 0);
    assert_int_equal(chdir(files_directory), 0);
    for (int i = 0; i < 2; i++) {
        json_t *file = run_file("input", names[i]);
        assert_string_equal(text_in(file, "path"), names[i]);
        assert_int_equal(json_object_size(file), 2);
        json_decref(file);
    }
    assert_int_equal(fchdir(here), 0);
    close(here);
}

/* Seconds go to the phase that they were spent in. */
static void test_phases(void **state) {
    (void)state;
    PhaseClock c = phase_clock_start();
    c.since = clock_seconds() - 5; /* five seconds of setup */
    assert_int_equal(phase_enter(&c, RUN_SAMPLING), RUN_SETUP);
    c.since -= 2;
    assert_int_equal(phase_enter(&c, RUN_REWARD), RUN_SAMPLING);
    c.since -= 1;
    phase_enter(&c, RUN_SAMPLING);
    c.since -= 2;
    json_t *seconds = phase_seconds(&c);
    const double expected[] = {5, 4, 1};
    for (int i = 0; i < 3; i++)
        assert_close(json_number_value(json_object_get(seconds, run_phase_name((RunPhase)i))), expected[i], 0.05);
    assert_int_equal(json_object_size(seconds), 3);
    json_decref(seconds);
    assert_true(process_age() > 0);
}

/* Every colour that the style uses is defined for light and for dark screens; comments and indentation are left out, and
 * nothing ends the style or the script early. */
static void test_report_style(void **state) {
    (void)state;
    const char *css = report_css(), *js = report_js();
    int colours = 0;
    for (const char *c = css; (c = strstr(c, "var(--")); colours++) {
        char definition[32];
        c += strlen("var(");
        snprintf(definition, sizeof definition, "\n%.*s: #", (int)strcspn(c, ")"), c);
        if (occurrences(css, definition) != 2)
            fail_msg("%s, which the style uses, is not defined twice", definition + 1);
    }
    assert_true(colours > 50);
    const char *const texts[] = {css, js};
    for (int i = 0; i < 2; i++) {
        assert_null(strstr(texts[i], "/*"));
        assert_null(strstr(texts[i], "*/"));
        assert_null(strstr(texts[i], "\n "));
        assert_null(strstr(texts[i], "</"));
    }
    assert_non_null(strstr(js, "return '\\u2013';\n")); /* a backslash is still one */
    assert_non_null(strstr(js, "(right ? -7 : 7)"));
}

/* ---- curves and charts ---- */

/* Held-out values without a training curve are named in the title; an abbreviation keeps its capitals. */
static void test_curve_titles(void **state) {
    (void)state;
    History h = {0};
    history_line(&h, 1, 1);
    history_value(&h, "eval_kl", 1, 0.5);
    history_value(&h, "eval_loss", 1, 0.5);
    history_value(&h, "entropy", 1, 0.5);
    char *page = page_of(&h, false);
    assert_non_null(strstr(page, "<h4>Held-out KL to the reference <code>eval_kl</code>"));
    assert_non_null(strstr(page, "<h4>Held-out loss <code>eval_loss</code>"));
    assert_non_null(strstr(page, "<h4>Entropy <code>entropy</code>"));
    free(page);
    history_free(&h);
}

static void test_curves(void **state) {
    (void)state;
    static const char *const keys[] = {"step_time",
                                       "eval_accuracy",
                                       "completions/max_length",
                                       "completions/mean_length",
                                       "completions/min_length",
                                       "loss",
                                       "reward",
                                       "eval_loss",
                                       "own name",
                                       "eval_pass@8",
                                       "rewards/verify/mean",
                                       "kl"};
    History h = {0};
    for (int64_t at = 1; at <= 2; at++)
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) history_value(&h, keys[i], at, 0.5);
    CurveList list = curve_list(&h);
    static const char *const expected[] = {
        "eval_accuracy", "eval_pass@8", "reward",  "rewards/verify/mean", "kl", "completions/mean_length",
        "loss",          "step_time",   "own name"};
    assert_int_equal(list.count, sizeof expected / sizeof *expected);
    for (size_t i = 0; i < list.count; i++) assert_string_equal(list.curves[i].key, expected[i]);
    assert_string_equal(list.curves[6].chart.lines[1].mid->key, "eval_loss");
    assert_string_equal(list.curves[5].chart.lines[0].low->key, "completions/min_length");
    assert_string_equal(list.curves[5].chart.lines[0].high->key, "completions/max_length");
    assert_true(list.curves[0].eval && list.curves[0].chart.share);
    free(list.curves);
    history_free(&h);

    static const char *const sft[] = {"entropy", "step_time", "mean_token_accuracy",
                                      "loss"}; /* no rewards: loss first */
    for (size_t i = 0; i < 4; i++) history_value(&h, sft[i], 1, 0.5);
    list = curve_list(&h);
    assert_string_equal(list.curves[0].key, "loss");
    assert_string_equal(list.curves[3].key, "step_time");
    free(list.curves);
    history_free(&h);
}

static void test_chart_values(void **state) {
    (void)state;
    static const struct {
        double value;
        bool share;
        const char *text;
    } table[] = {{0, 0, "0"},
                 {1, 0, "1"},
                 {-3, 0, "-3"},
                 {0.6931, 0, "0.693"},
                 {12.345, 0, "12.35"},
                 {123.45, 0, "123.5"},
                 {0.0123, 0, "0.0123"},
                 {1.2e-5, 0, "1.2e-5"},
                 {-1e-300, 0, "-1e-300"},
                 {9999, 0, "9999"},
                 {12345, 0, "12.3k"},
                 {999600, 0, "1.00M"},
                 {3276800, 0, "3.28M"},
                 {4.5e9, 0, "4.50G"},
                 {1e300, 0, "1e300"},
                 {NAN, 0, "\xE2\x80\x93"},
                 {0.875, 1, "87.5%"},
                 {1, 1, "100%"},
                 {0, 1, "0%"},
                 {0.0031, 1, "0.31%"},
                 {1e-9, 1,
                  "\xE2\x89\x88"
                  "0%"}};
    char text[32];
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        chart_value(table[i].value, table[i].share, text);
        assert_string_equal(text, table[i].text);
    }
    chart_tick(0.4, 0.2, true, text);
    assert_string_equal(text, "40%");
    chart_tick(0.005, 0.005, true, text);
    assert_string_equal(text, "0.5%");
    chart_tick(1, 0.2, false, text);
    assert_string_equal(text, "1.0");
    chart_tick(5000, 5000, false, text);
    assert_string_equal(text, "5000");
    chart_tick(15000, 5000, false, text);
    assert_string_equal(text, "15k");
    chart_tick(2500000, 500000, false, text);
    assert_string_equal(text, "2.5M");
    assert_true(chart_round(1, 5) == 0.2);
    assert_true(chart_round(300, 4) == 100);
    assert_true(fabs(chart_round(7e-9, 5) - 2e-9) < 1e-15);
}

static void test_chart_smoothing(void **state) {
    (void)state;
    enum { N = 400 };
    History h = {0};
    for (int i = 0; i < N; i++) {
        history_value(&h, "constant", i, i == 200 ? NAN : 3);
        history_value(&h, "line", i, 2.0 * i);
        history_value(&h, "noise", i, i % 2 ? 1 : -1);
    }
    double *constant = chart_smooth(history_find(&h, "constant")), *line = chart_smooth(history_find(&h, "line")),
           *noise = chart_smooth(history_find(&h, "noise"));
    for (int i = 0; i < N; i++) {
        assert_true(i == 200 ? isnan(constant[i]) : fabs(constant[i] - 3) < 1e-12);
        if (i > 30 && i < N - 30) {
            assert_true(fabs(line[i] - 2.0 * i) < 1e-9); /* no lag */
            assert_true(fabs(noise[i]) < 0.1);
        }
    }
    free(constant);
    free(line);
    free(noise);
    history_free(&h);
}

/* A long series is thinned, but its one spike is kept, and gaps visibly break the line. */
static void test_chart_paths(void **state) {
    (void)state;
    History h = {0};
    const ChartScale scale = {
        .left = 40, .right = 316, .top = 22, .bottom = 156, .x0 = 0, .x1 = 99999, .y0 = 0, .y1 = 100};
    for (int i = 0; i < 100000; i++) {
        history_value(&h, "long", i, i == 54321 ? 100 : i % 3);
        history_value(&h, "gap", i, (i >= 30000 && i < 60000) || i == 80000 ? NAN : 1);
    }
    char *path;
    size_t n;
    FILE *f = open_memstream(&path, &n);
    const Series *s = history_find(&h, "long");
    chart_path(f, &scale, s, s->values, "raw", 0);
    fclose(f);
    assert_true(n < 20000);
    assert_int_equal(occurrences(path, "M"), 1);
    char spike[32];
    snprintf(spike, sizeof spike, "L%.1f 22.0", 40 + 276 * 54321.0 / 99999);
    assert_non_null(strstr(path, spike));
    free(path);
    f = open_memstream(&path, &n);
    s = history_find(&h, "gap");
    chart_path(f, &scale, s, s->values, "line", 0);
    fclose(f);
    assert_int_equal(occurrences(path, "M"), 2); /* the single point is narrower than a pixel */
    free(path);
    history_free(&h);
}

/* The points for tooltips are JSON, few, and at logged steps. */
static void test_chart_data(void **state) {
    (void)state;
    History h = {0};
    for (int i = 1; i <= 5000; i++) {
        history_value(&h, "loss", i, i % 7 ? 5.0 / i : NAN);
        if (i % 1000 == 0) history_value(&h, "eval_loss", i, 1);
    }
    Chart c = {.lines = {{.mid = history_find(&h, "loss")}, {.mid = history_find(&h, "eval_loss")}},
               .count = 2,
               .unit = "loss",
               .smooth = true,
               .log = true,
               .x0 = 1,
               .x1 = 5000};
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    chart_data(f, &c);
    fclose(f);
    json_t *data = json_loads(text, 0, NULL), *lines = json_object_get(data, "lines");
    assert_int_equal(json_array_size(lines), 2);
    const json_t *x = json_object_get(json_array_get(lines, 0), "x"),
                 *r = json_object_get(json_array_get(lines, 0), "r");
    const size_t points = json_array_size(x);
    assert_in_range(points, 200, 240);
    assert_int_equal(json_array_size(r), points);
    assert_int_equal(json_array_size(json_object_get(json_array_get(lines, 0), "s")), points);
    for (size_t i = 0; i < points; i++) {
        const double at = json_number_value(json_array_get(x, i)), value = json_number_value(json_array_get(r, i));
        assert_true(fabs(value - 5 / at) < 1e-4 * value);
    }
    assert_int_equal(json_array_size(json_object_get(json_array_get(lines, 1), "x")), 5);
    json_decref(data);
    free(text);
    history_free(&h);
}

/* The edges of a band have a value for each point; the page has the tokens and the seconds of at most 400 steps, from the
 * first to the last, and null for steps without them. */
static void test_chart_axes(void **state) {
    (void)state;
    History h = {0};
    for (int i = 1; i <= 1000; i++) {
        history_line(&h, 2 * i, 1764000000 + 3 * i);
        history_value(&h, "length_mean", 2 * i, i);
        history_value(&h, "length_min", 2 * i, i - 1);
        history_value(&h, "length_max", 2 * i, i + 2);
        if (i > 500) history_value(&h, "num_tokens", 2 * i, 100.0 * i);
    }
    char *page = page_of(&h, false);
    const char *at = strstr(page, "id='axes'>");
    assert_non_null(at);
    json_t *axes = json_loadb(at + 10, strcspn(at + 10, "<"), 0, NULL);
    const json_t *step = json_object_get(axes, "step"), *tokens = json_object_get(axes, "tokens"),
                 *time = json_object_get(axes, "time");
    const size_t n = json_array_size(step);
    assert_int_equal(n, 400);
    assert_int_equal(json_array_size(tokens), n);
    assert_int_equal(json_array_size(time), n);
    assert_int_equal(json_integer_value(json_array_get(step, 0)), 2);
    assert_int_equal(json_integer_value(json_array_get(step, n - 1)), 2000);
    for (size_t i = 0; i < n; i++) {
        const double s = json_number_value(json_array_get(step, i));
        assert_true(json_number_value(json_array_get(time, i)) == 3 * (s / 2 - 1));
        if (s > 1000) assert_true(json_number_value(json_array_get(tokens, i)) == 50 * s);
        else assert_true(json_is_null(json_array_get(tokens, i)));
    }
    json_decref(axes);
    double low = 0, high = 0;
    const char *edge = strstr(page, ",\"low\":[");
    assert_true(edge && sscanf(edge, ",\"low\":[%lf", &low) == 1);
    edge = strstr(page, ",\"high\":[");
    assert_true(edge && sscanf(edge, ",\"high\":[%lf", &high) == 1);
    assert_true(high - low == 3);
    free(page);
    history_free(&h);
}

static void test_report_long(void **state) {
    (void)state;
    History h = {0};
    Random r = random_start(3, 4);
    for (int i = 1; i <= 20000; i++) {
        history_line(&h, i, 1764000000 + i);
        for (int k = 0; k < 12; k++) {
            char key[16];
            snprintf(key, sizeof key, "key %d", k);
            history_value(&h, key, i, random_normal(&r));
        }
    }
    char *page = page_of(&h, false);
    assert_true(strlen(page) < 500000);
    free(page);
    history_free(&h);
}

/* ---- UTF-8 ---- */

static void test_utf8(void **state) {
    (void)state;
    static const char *const table[][2] = {
        {"plain", "plain"},
        {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"a\xff", "a\xEF\xBF\xBD"},
        {"\xc0\xaf", "\xEF\xBF\xBD\xEF\xBF\xBD"},                                   /* overlong */
        {"\xed\xa0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},                   /* a surrogate */
        {"\xf4\x90\x80\x80x", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBDx"}, /* past U+10FFFF */
        {"\xe2\x82", "\xEF\xBF\xBD\xEF\xBF\xBD"}};                                  /* truncated */
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char *copy = utf8_copy(table[i][0]);
        assert_string_equal(copy, table[i][1]);
        free(copy);
    }
    Random r = random_start(5, 6);
    for (int i = 0; i < 20000; i++) { /* jansson agrees on what is valid */
        char text[9] = "";
        for (int k = 0; k < 8; k++)
            text[k] = "a\xc2\xe0\xed\xf0\xf4\x80\x8f\x90\x9f\xa0\xbf\xe1\xf1\xff\xc1"[random_below(&r, 16)];
        json_t *valid = json_string(text);
        char *copy = utf8_copy(text);
        assert_int_equal(!strcmp(copy, text), valid != NULL);
        json_decref(valid);
        free(copy);
    }
}

/* ---- the progress line ---- */

static void test_draw(void **state) {
    (void)state;
    char line[256];
    progress_draw(line, sizeof line, 200, 120, 2000, 1.25, "reward 0.71");
    assert_string_equal(line, "[=>                  ] 120/2000   6%  1.25 steps/s  25:04 left  reward 0.71");
    progress_draw(line, sizeof line, 200, 2000, 2000, 0.05, NULL);
    assert_string_equal(line, "[====================] 2000/2000 100%  20.0 s/step  0:00 left");
    progress_draw(line, sizeof line, 200, 3, 0, 0, NULL);
    assert_string_equal(line, "step 3");
    progress_draw(line, sizeof line, 200, 0, 10, 0, "");
    assert_string_equal(line, "[>                   ] 0/10   0%");
    progress_draw(line, sizeof line, 13, 3, 0, 0, "\xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f more");
    assert_string_equal(line, "step 3  \xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f "); /* truncated between characters */
    progress_duration(3700, line, sizeof line);
    assert_string_equal(line, "1:01:40");
    progress_duration(200000, line, sizeof line);
    assert_string_equal(line, "2d 07:33");
    progress_duration(INFINITY, line, sizeof line);
}

/* On a terminal one line is updated in place; elsewhere nothing is printed. */
static void test_progress(void **state) {
    (void)state;
    for (int terminal = 0; terminal < 2; terminal++) {
        int ends[2], saved = dup(STDERR_FILENO);
        if (terminal) {
            ends[0] = posix_openpt(O_RDWR | O_NOCTTY);
            if (ends[0] < 0 || grantpt(ends[0]) || unlockpt(ends[0])) skip();
            ends[1] = open(ptsname(ends[0]), O_RDWR | O_NOCTTY);
            assert_true(ends[1] >= 0);
        } else assert_int_equal(pipe(ends), 0);
        dup2(ends[1], STDERR_FILENO);
        Metrics m;
        setenv("TERM", "xterm", 1);
        const bool opened = metrics_open(&m, "p", NULL, NULL, NULL, -1, NULL);
        m.interval = 1e9; /* the time limit is set so that a busy machine does not matter */
        metrics_progress(&m, 1, 100, "loss 1");
        metrics_progress(&m, 2, 100, "too soon after the first");
        metrics_line(&m, "step %d", 2);
        metrics_progress(&m, 3, 100, "loss 3");
        metrics_close(&m, NULL);
        dup2(saved, STDERR_FILENO);
        close(saved);
        assert_true(opened);
        close(ends[1]);
        char text[1024] = "";
        size_t length = 0;
        for (ssize_t n; (n = read(ends[0], text + length, sizeof text - 1 - length)) > 0;) length += (size_t)n;
        close(ends[0]);
        if (!terminal) assert_string_equal(text, "step 2\n");
        else {
            assert_memory_equal(text, "\r[>", 3);
            assert_non_null(strstr(text, "loss 1\033[K\r\033[Kstep 2\r\n\r["));
            assert_null(strstr(text, "too soon"));
            assert_non_null(strstr(text, "left  loss 3\033[K\r\033[K"));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_numbers_read_back),
        cmocka_unit_test(test_short_json),
        cmocka_unit_test(test_lines_without_nan),
        cmocka_unit_test(test_standard_output),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_resume_without_files),
        cmocka_unit_test(test_resume_broken),
        cmocka_unit_test(test_new_run),
        cmocka_unit_test(test_unwritable),
        cmocka_unit_test(test_crc32c),
        cmocka_unit_test(test_tensorboard_golden),
        cmocka_unit_test(test_tensorboard_run),
        cmocka_unit_test(test_report_empty),
        cmocka_unit_test(test_report_one_step),
        cmocka_unit_test(test_report_escapes),
        cmocka_unit_test(test_report_samples),
        cmocka_unit_test(test_report_directions),
        cmocka_unit_test(test_report_constants),
        cmocka_unit_test(test_catalogue),
        cmocka_unit_test(test_report_pairs),
        cmocka_unit_test(test_report_solutions),
        cmocka_unit_test(test_report_mix),
        cmocka_unit_test(test_records),
        cmocka_unit_test(test_files_of_streams),
        cmocka_unit_test(test_phases),
        cmocka_unit_test(test_report_final),
        cmocka_unit_test(test_report_style),
        cmocka_unit_test(test_curve_titles),
        cmocka_unit_test(test_curves),
        cmocka_unit_test(test_chart_values),
        cmocka_unit_test(test_chart_smoothing),
        cmocka_unit_test(test_chart_paths),
        cmocka_unit_test(test_chart_data),
        cmocka_unit_test(test_chart_axes),
        cmocka_unit_test(test_report_long),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_draw),
        cmocka_unit_test(test_progress),
    };
    return cmocka_run_group_tests(tests, files_setup, files_teardown);
}
