/* fuzz_search.c - libFuzzer target: queries for the tool `search`, and corpora with damaged bytes.
 *
 * The first byte selects. Even: the rest is a query for a small corpus, which must be answered. Odd: the rest, three bytes
 * at a time, are places and values of bytes of that corpus that are changed; it is then refused in one line or searched.
 */
#include "../llmc/base/error.h"   /* Error, xmalloc */
#include "../llmc/base/text.h"    /* TextBuffer, text_free */
#include "../llmc/tools/search.h" /* Search, search_run, SEARCH_NONE, SEARCH_TABLE, ... */
#include "fuzz.h"                 /* require, require_error */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

enum { CORPUS_BYTES = 1 << 16 };

/* A new file, whose name SQLite must be able to resolve. */
static int temporary(char path[64]) {
    snprintf(path, 64, "/tmp/fuzz_search.XXXXXX");
    const int file = mkstemp(path);
    require(file >= 0);
    return file;
}

/* The bytes of a corpus with small pages, so that few inputs reach all of it. */
static const unsigned char *corpus(size_t *n) {
    static unsigned char bytes[CORPUS_BYTES];
    static size_t size;
    if (!size) {
        sqlite3 *db;
        char path[64];
        const int file = temporary(path);
        require(sqlite3_open(path, &db) == SQLITE_OK);
        require(!sqlite3_exec(db,
                              "PRAGMA page_size = 512; PRAGMA journal_mode = OFF;" SEARCH_TABLE ";"
                              "INSERT INTO docs VALUES ('Ada', 'the first program'), ('Bob', 'a second program');"
                              "INSERT INTO docs VALUES ('k1', 'k1 leads to k2.'), ('k2', 'k2 leads to k1.');"
                              "INSERT INTO docs(docs) VALUES ('optimize')",
                              NULL, NULL, NULL));
        sqlite3_close(db);
        size = (size_t)pread(file, bytes, sizeof bytes, 0);
        require(size > 512 && size < sizeof bytes);
        close(file);
        unlink(path);
    }
    *n = size;
    return bytes;
}

/* Opens bytes as a corpus. */
static Search *open_bytes(const unsigned char *bytes, size_t n, Error *e) {
    char path[64];
    const int file = temporary(path);
    require(write(file, bytes, n) == (ssize_t)n);
    Search *s = search_open(path, e);
    close(file);
    unlink(path);
    return s;
}

static void try_query(const char *text, size_t n) {
    static Search *s;
    Error e;
    size_t size;
    TextBuffer result = {0};
    const unsigned char *bytes = corpus(&size);
    if (!s) s = open_bytes(bytes, size, &e);
    require(s && search_run(s, text, n, 3, &result, &e));
    require(!strcmp(result.text, SEARCH_NONE) || !strncmp(result.text, "Doc 1(Title: ", 13));
    text_free(&result);
}

static void try_corpus(const uint8_t *data, size_t n) {
    Error e = {""};
    SearchCounts counts;
    TextBuffer result = {0};
    size_t title, size;
    const unsigned char *bytes = corpus(&size);
    unsigned char *changed = (unsigned char *)xmalloc(size);
    memcpy(changed, bytes, size);
    for (size_t i = 0; i + 2 < n; i += 3) changed[(size_t)(data[i] << 8 | data[i + 1]) % size] = data[i + 2];
    Search *s = open_bytes(changed, (size_t)size, &e);
    if (!s) require_error(&e);
    else {
        if (!search_run(s, "first k1 program", 16, 3, &result, &e)) require_error(&e);
        if (!search_count(s, &counts, &e)) require_error(&e);
        if (search_passage(s, 1, &result, &title, &e) < 0) require_error(&e);
    }
    search_close(s);
    text_free(&result);
    free(changed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (!n) return 0;
    if (*data & 1) try_corpus(data + 1, n - 1);
    else try_query((const char *)data + 1, n - 1);
    return 0;
}
