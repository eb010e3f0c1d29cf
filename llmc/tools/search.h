/* search.h - the tool `search`: the passages of a corpus that share the most telling words with a query, by SQLite's FTS5.
 *
 * A corpus is an SQLite database that data/make_corpus wrote: the FTS5 table docs(title, text), in which words are stemmed
 * (Porter), without case and diacritics. The passages with at least one word of the query are ordered by BM25 (Robertson
 * and Zaragoza 2009; SQLite's k1 = 1.2 and b = 0.75), in which a word of a title counts twice; of equal ones the first in
 * the corpus comes first. The result is written as by the retriever of Search-R1 (2503.09516), a line for each passage:
 *
 *     Doc 1(Title: Ada Lovelace) Ada Lovelace wrote the first program.
 *
 * or `No results.`. FTS5 never reads a query as it is: it is divided into its words (runs of letters, digits and marks, as
 * in Unicode), and each of the first 32 is quoted, so no operator of FTS5's language can be typed.
 *
 * The database is opened read-only and as immutable: nothing is written next to it, and many processes share its pages.
 * A failure to read it is one of the machine, and no result.
 *
 *     Search *s = search_open("corpus.db", &e);
 *     TextBuffer result = {0};
 *     if (!s) die("%s", e.text);
 *     if (!search_run(s, "first program", 13, 3, &result, &e)) die("%s", e.text);
 *     fputs(result.text, stdout);
 *     text_free(&result);
 *     search_close(s);
 */
#ifndef LLMC_TOOLS_SEARCH_H
#define LLMC_TOOLS_SEARCH_H

#include "../base/error.h" /* Error, error_set, xcalloc, xstrdup */
#include "../base/text.h"  /* text_string, TextBuffer, text_clear, text_append, ... */
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

enum { SEARCH_WORDS = 32, SEARCH_WORD_BYTES = 256, SEARCH_TOP = 3, SEARCH_TOP_MAX = 20 };

#define SEARCH_NONE  "No results."
#define SEARCH_MAGIC "SQLite format 3" /* the first 16 bytes of a database, with the NUL */

/* The table of a corpus. */
#define SEARCH_TABLE                                                                                                   \
    "CREATE VIRTUAL TABLE docs USING fts5(title, text, tokenize = 'porter unicode61 remove_diacritics 2', detail = full)"

typedef struct Search {
    sqlite3 *db;
    sqlite3_stmt *find;
    char *path;
} Search;

static inline void search_close(Search *s) {
    if (!s) return;
    sqlite3_finalize(s->find);
    sqlite3_close(s->db);
    free(s->path);
    free(s);
}

/* ---- queries --------------------------------------------------------------------------------------------------- */

/* Whether a character belongs to a word. Marks do, so that a word with its diacritics apart stays one. */
static inline bool search_in_word(uint32_t c) {
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return true;
    default: return false;
    }
}

/* Writes the query that FTS5 gets for text[0..n): its words, quoted and joined by OR; "" if there are none. Words of more
 * than 256 bytes are left out. Returns the number of words. */
static inline int search_words(const char *text, size_t n, TextBuffer *out) {
    int words = 0;
    text_clear(out);
    for (size_t i = 0, from = 0; i <= n && words < SEARCH_WORDS;) {
        const int length = i < n ? utf8_length(text + i, n - i) : 0;
        if (length && search_in_word(utf8_decode(text + i, length))) {
            i += (size_t)length;
            continue;
        }
        if (i > from && i - from <= SEARCH_WORD_BYTES) {
            text_string(out, words++ ? " OR \"" : "\"");
            text_append(out, text + from, i - from);
            text_string(out, "\"");
        }
        i += length ? (size_t)length : 1;
        from = i;
    }
    return words;
}

/* Sets the error of a database that cannot be read. */
static inline bool search_failed(const Search *s, Error *e) {
    return error_set(e, "%s: cannot search: %s", s->path, sqlite3_errmsg(s->db));
}

/* Appends the text of a column. */
static inline void search_column(sqlite3_stmt *row, int column, TextBuffer *out) {
    const char *text = (const char *)sqlite3_column_text(row, column);
    if (text) text_append(out, text, (size_t)sqlite3_column_bytes(row, column));
}

/* Writes the `top` best passages for the query text[0..n) to *result. Returns false if the database cannot be read. */
static inline bool search_run(Search *s, const char *text, size_t n, int top, TextBuffer *result, Error *e) {
    TextBuffer query = {0};
    int code = SQLITE_DONE, found = 0;
    text_clear(result);
    if (search_words(text, n, &query)) {
        sqlite3_bind_text(s->find, 1, query.text, (int)query.length, SQLITE_STATIC);
        sqlite3_bind_int(s->find, 2, top);
        while ((code = sqlite3_step(s->find)) == SQLITE_ROW) {
            text_format(result, "Doc %d(Title: ", ++found);
            search_column(s->find, 0, result);
            text_string(result, ") ");
            search_column(s->find, 1, result);
            text_string(result, "\n");
        }
    }
    const bool ok = code == SQLITE_DONE || search_failed(s, e);
    sqlite3_reset(s->find);
    sqlite3_clear_bindings(s->find);
    text_free(&query);
    if (ok && !found) text_string(result, SEARCH_NONE);
    return ok;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* Whether the 16 bytes begin an SQLite database. */
static inline bool search_begins(const char first[16]) { return !memcmp(first, SEARCH_MAGIC, 16); }

/* Compares a file's size with its header: bytes 16 and 17 are the size of a page (1: 65536), 28 to 31 their number. */
static inline bool search_check_file(const char *path, Error *e) {
    unsigned char head[32];
    struct stat about;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return error_set(e, "%s: cannot open: %s", path, strerror(errno));
    const bool read_it = !fstat(file, &about) && S_ISREG(about.st_mode);
    const ssize_t got = read_it ? read(file, head, sizeof head) : 0;
    close(file);
    if (!read_it) return error_set(e, "%s: is not a regular file, in which a corpus must be", path);
    if (got < 16 || !search_begins((const char *)head))
        return error_set(e, "%s: is no corpus; data/make_corpus makes one of documents in JSON lines", path);
    const int64_t page = (head[16] << 8 | head[17]) == 1 ? 65536 : head[16] << 8 | head[17];
    const int64_t pages = got < 32 ? 0 : (int64_t)head[28] << 24 | head[29] << 16 | head[30] << 8 | head[31];
    if (!pages) return error_set(e, "%s: the corpus is cut off after %lld bytes", path, (long long)about.st_size);
    return about.st_size >= page * pages || error_set(e, "%s: the corpus is cut off: %lld of %lld bytes", path,
                                                      (long long)about.st_size, (long long)(page * pages));
}

/* Opens the database read-only. The bytes of the path that a URI gives a meaning are written as %XX. */
static inline bool search_open_file(Search *s, Error *e) {
    TextBuffer uri = {0};
    text_string(&uri, "file:");
    if (!strncmp(s->path, "//", 2)) text_string(&uri, "//"); /* else it would name a host */
    for (const unsigned char *c = (const unsigned char *)s->path; *c; c++)
        text_format(&uri, strchr("%?#", *c) || *c <= ' ' ? "%%%02X" : "%c", *c);
    text_string(&uri, "?mode=ro&immutable=1");
    const int code =
        sqlite3_open_v2(uri.text, &s->db, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX, NULL);
    text_free(&uri);
    if (code != SQLITE_OK)
        return error_set(e, "%s: cannot open: %s", s->path, s->db ? sqlite3_errmsg(s->db) : sqlite3_errstr(code));
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    sqlite3_limit(s->db, SQLITE_LIMIT_SQL_LENGTH, 1000);
    sqlite3_limit(s->db, SQLITE_LIMIT_ATTACHED, 0);
    return true;
}

/* Checks that the database has the table of a corpus: another one, such as a view, could run for ever. */
static inline bool search_check_table(Search *s, Error *e) {
    static const char *const table = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 'docs'";
    sqlite3_stmt *row;
    if (sqlite3_prepare_v2(s->db, table, -1, &row, NULL) != SQLITE_OK) return search_failed(s, e);
    const int code = sqlite3_step(row);
    const char *sql = code == SQLITE_ROW ? (const char *)sqlite3_column_text(row, 0) : NULL;
    const bool same = sql && !strcmp(sql, SEARCH_TABLE), failed = code != SQLITE_ROW && code != SQLITE_DONE;
    if (failed) search_failed(s, e);
    sqlite3_finalize(row);
    return !failed &&
           (same ||
            error_set(e, "%s: an SQLite database, but no corpus: it has no table docs as data/make_corpus makes it",
                      s->path));
}

/* Opens a corpus. Returns NULL with the error if the file is none. */
static inline Search *search_open(const char *path, Error *e) {
    static const char *const find =
        "SELECT title, text FROM docs WHERE docs MATCH ?1 ORDER BY bm25(docs, 2.0, 1.0), rowid LIMIT ?2";
    Search *s = (Search *)xcalloc(1, sizeof *s);
    s->path = xstrdup(path);
    bool ok = search_check_file(path, e) && search_open_file(s, e) && search_check_table(s, e);
    if (ok && sqlite3_prepare_v2(s->db, find, -1, &s->find, NULL) != SQLITE_OK) ok = search_failed(s, e);
    if (ok) return s;
    search_close(s);
    return NULL;
}

/* ---- contents -------------------------------------------------------------------------------------------------- */

typedef struct SearchCounts {
    int64_t passages, titles, bytes; /* passages; different titles; bytes of text */
} SearchCounts;

/* Counts what a corpus holds. */
static inline bool search_count(const Search *s, SearchCounts *c, Error *e) {
    static const char *const count =
        "SELECT count(*), count(DISTINCT title), total(length(CAST(text AS BLOB))) FROM docs";
    sqlite3_stmt *row;
    bool ok = sqlite3_prepare_v2(s->db, count, -1, &row, NULL) == SQLITE_OK && sqlite3_step(row) == SQLITE_ROW;
    if (ok)
        *c = (SearchCounts){sqlite3_column_int64(row, 0), sqlite3_column_int64(row, 1),
                            (int64_t)sqlite3_column_double(row, 2)};
    else search_failed(s, e);
    sqlite3_finalize(row);
    return ok;
}

/* A passage, of which the texts follow one another in *out: title[0..title), then the text. Returns 1, 0 if there is no
 * passage of this number (from 0), or -1 with the error. */
static inline int search_passage(const Search *s, int64_t number, TextBuffer *out, size_t *title, Error *e) {
    static const char *const passage = "SELECT title, text FROM docs WHERE rowid = ?1";
    sqlite3_stmt *row;
    int code = sqlite3_prepare_v2(s->db, passage, -1, &row, NULL);
    text_clear(out);
    if (code == SQLITE_OK) {
        sqlite3_bind_int64(row, 1, number + 1);
        code = sqlite3_step(row);
    }
    if (code == SQLITE_ROW) {
        search_column(row, 0, out);
        *title = out->length;
        search_column(row, 1, out);
    } else if (code != SQLITE_DONE) search_failed(s, e);
    sqlite3_finalize(row);
    return code == SQLITE_ROW ? 1 : code == SQLITE_DONE ? 0 : -1;
}

#endif
