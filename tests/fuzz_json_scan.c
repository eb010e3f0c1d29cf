/* fuzz_json_scan.c - libFuzzer target: arbitrary bytes as rows, of which json_scan() reads some members. A line that it
 * accepts is one that jansson accepts, and the members are equal. */
#include "../llmc/base/error.h"     /* xstrndup */
#include "../llmc/base/json_scan.h" /* JsonScan, json_scan, json_scan_free, json_scan_want */
#include "../llmc/base/text.h"      /* utf8_valid */
#include "fuzz.h"                   /* require */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const char *const names[] = {"a", "b", "", "right", "a.b"};
    JsonScan scan = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) json_scan_want(&scan, names[i], strlen(names[i]));
    for (size_t from = 0, length; from < n; from += length + 1) {
        const uint8_t *newline = memchr(data + from, '\n', n - from);
        length = newline ? (size_t)(newline - data) - from : n - from;
        char *line = xstrndup((const char *)data + from, length);
        if (utf8_valid(line, length) == length && json_scan(&scan, line, length)) {
            json_t *row = json_loadb(line, length, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, NULL);
            require(json_is_object(row));
            size_t found = 0;
            for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
                const json_t *value = json_object_get(row, names[i]), *scanned = json_object_get(scan.row, names[i]);
                require(value ? scanned && json_equal(value, scanned) : !scanned);
                found += value != NULL;
            }
            require(json_object_size(scan.row) == found);
            json_decref(row);
        }
        free(line);
    }
    json_scan_free(&scan);
    return 0;
}
