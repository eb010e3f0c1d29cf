/* fuzz_metrics.c - libFuzzer target: arbitrary bytes as the files that a resumed run reads back, then written as a
 * report.
 *
 * A line that begins with 's' is read as a line of samples, any other as a line of metrics. */
#include "../llmc/base/error.h"     /* Error */
#include "../llmc/report/history.h" /* History, history_free, history_read_line, history_read_sample */
#include "../llmc/report/report.h"  /* report_page */

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
    return 0;
}
