/* cache.h - replies of a server, kept in an SQLite file, so that a run that is resumed pays nothing twice and gets the same
 * scores.
 *
 * The key is the XXH3-128 of the address and of the whole request, which has the model. Several processes may use one file.
 *
 *     JudgeCache c;
 *     size_t length;
 *     const char *url = "https://example.org/v1/chat/completions", *request = "{}", *reply = "{}";
 *     if (!judge_cache_open(&c, "judge.db", &e)) return false;
 *     char *body = judge_cache_find(&c, url, request, &length);            // NULL: not there
 *     if (!body && !judge_cache_put(&c, url, request, reply, strlen(reply), &e)) return false;
 *     judge_cache_close(&c);
 */
#ifndef LLMC_JUDGE_CACHE_H
#define LLMC_JUDGE_CACHE_H

#include "../base/error.h" /* Error, error_set, xstrndup */
#include "../base/text.h"  /* text_string, TextBuffer, text_append, text_free */
#include <sqlite3.h>
#include <xxhash.h>

typedef struct JudgeCache {
    sqlite3 *db;
    sqlite3_stmt *find, *put;
    const char *path;
} JudgeCache;

static inline void judge_cache_close(JudgeCache *c) {
    sqlite3_finalize(c->find);
    sqlite3_finalize(c->put);
    sqlite3_close(c->db);
    *c = (JudgeCache){0};
}

static inline bool judge_cache_failed(JudgeCache *c, const char *what, Error *e) {
    return error_set(e, "--judge-cache %s: cannot %s it: %s", c->path, what, sqlite3_errmsg(c->db));
}

static inline bool judge_cache_open(JudgeCache *c, const char *path, Error *e) {
    *c = (JudgeCache){.path = path};
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
    const bool ok =
        sqlite3_open_v2(path, &c->db, flags, NULL) == SQLITE_OK && sqlite3_busy_timeout(c->db, 10000) == SQLITE_OK &&
        sqlite3_exec(c->db,
                     "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS judge (key BLOB PRIMARY KEY, reply BLOB)",
                     NULL, NULL, NULL) == SQLITE_OK &&
        sqlite3_prepare_v2(c->db, "SELECT reply FROM judge WHERE key = ?", -1, &c->find, NULL) == SQLITE_OK &&
        sqlite3_prepare_v2(c->db, "INSERT OR IGNORE INTO judge VALUES (?, ?)", -1, &c->put, NULL) == SQLITE_OK;
    if (ok) return true;
    judge_cache_failed(c, "open", e);
    judge_cache_close(c);
    return false;
}

static inline XXH128_canonical_t judge_cache_key(const char *url, const char *request) {
    TextBuffer all = {0};
    XXH128_canonical_t key;
    text_string(&all, url);
    text_append(&all, "", 1);
    text_string(&all, request);
    XXH128_canonicalFromHash(&key, XXH3_128bits(all.text, all.length));
    text_free(&all);
    return key;
}

/* The reply to a request, followed by a NUL; NULL if it is not there. The caller frees it. *length: its bytes. */
static inline char *judge_cache_find(JudgeCache *c, const char *url, const char *request, size_t *length) {
    char *reply = NULL;
    if (!c->db) return NULL;
    const XXH128_canonical_t key = judge_cache_key(url, request);
    sqlite3_bind_blob(c->find, 1, &key, sizeof key, SQLITE_STATIC);
    if (sqlite3_step(c->find) == SQLITE_ROW) {
        *length = (size_t)sqlite3_column_bytes(c->find, 0);
        reply = xstrndup(*length ? (const char *)sqlite3_column_blob(c->find, 0) : "", *length);
    }
    sqlite3_reset(c->find);
    return reply;
}

/* Stores a reply. */
static inline bool judge_cache_put(JudgeCache *c, const char *url, const char *request, const char *reply, size_t n,
                                   Error *e) {
    if (!c->db) return true;
    const XXH128_canonical_t key = judge_cache_key(url, request);
    sqlite3_bind_blob(c->put, 1, &key, sizeof key, SQLITE_STATIC);
    sqlite3_bind_blob(c->put, 2, reply, (int)n, SQLITE_STATIC);
    const bool ok = sqlite3_step(c->put) == SQLITE_DONE || judge_cache_failed(c, "write", e);
    sqlite3_reset(c->put);
    return ok;
}

#endif
