/* fuzz_metrics.c - libFuzzer target: arbitrary bytes as the files that a resumed run reads back, then written as a
 * report, or on a page with another run.
 *
 * A line that begins with 's' is read as a line of samples, any other as a line of metrics. The bytes are also a metrics
 * file that metrics_cut() shortens: a second cut must leave its result as it is. */
#include "../llmc/base/error.h"     /* Error */
#include "../llmc/report/compare.h" /* compare_page */
#include "../llmc/report/history.h" /* history_free, history_read_line, History, history_read_sample */
#include "../llmc/report/metrics.h" /* Metrics, metrics_cut */
#include "../llmc/report/report.h"  /* report_page */
#include "../llmc/report/runs.h"    /* Run, Runs, run_parse, runs_order */
#include "fuzz.h"                   /* require, require_error */

/* Cuts the file after step 5. Returns its length, or -1 if it was refused. */
static long cut(const char *path) {
    Error e = {""};
    Metrics m = {0};
    struct stat about;
    const bool ok = metrics_cut(&m, path, 5, history_read_line, &e);
    if (!ok) require_error(&e);
    history_free(&m.history);
    return !ok || stat(path, &about) ? -1 : (long)about.st_size;
}

static void cut_twice(const uint8_t *data, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/dev/shm/fuzz_metrics.%d", (int)getpid());
    FILE *f = fopen(path, "w");
    require(f && fwrite(data, 1, size, f) == size && !fclose(f));
    const long first = cut(path);
    require(first <= (long)size + 1);
    if (first >= 0) require(cut(path) == first);
    unlink(path);
}

/* The bytes as the metrics of two runs on one page. */
static void compare(const uint8_t *data, size_t size) {
    Error e = {""};
    Run run = {.name = strdup("a")};
    if (run_parse(&run, (const char *)data, size, &e)) {
        Runs runs = {.runs = (Run[]){run, run}, .count = 2};
        char *page;
        size_t length;
        runs_order(&runs);
        FILE *f = open_memstream(&page, &length);
        compare_page(f, &runs);
        fclose(f);
        free(page);
    } else require_error(&e);
    history_free(&run.h);
    free(run.name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    History h = {0};
    Error e;
    for (size_t at = 0; at < size;) {
        const uint8_t *end = (const uint8_t *)memchr(data + at, '\n', size - at);
        const size_t n = end ? (size_t)(end - data) - at : size - at;
        if (n && data[at] == 's') history_read_sample(&h, (const char *)data + at + 1, n - 1, 1000, &e);
        else history_read_line(&h, (const char *)data + at, n, 1000, &e);
        at += n + 1;
    }
    char *page;
    size_t length;
    FILE *f = open_memstream(&page, &length);
    report_page(f, &h, false);
    fclose(f);
    free(page);
    history_free(&h);
    cut_twice(data, size);
    compare(data, size);
    return 0;
}
