/* http.h - requests to a server of chat completions, many at once, by libcurl.
 *
 * Each request is a POST of JSON to URL/chat/completions with the key of an environment variable. Every request ends: by a
 * reply, or as failed after its tries. What happens on
 *
 *   429, 408, 5xx, lost or refused connections, timeouts    tried again after 1, 2, 4, ... s, or what Retry-After says
 *   401, 403, 404, redirects, certificates that do not verify    the call fails at once: no other request would succeed
 *   other statuses, replies of another shape or above 4 MiB      failed, with the beginning of the reply
 *
 * Redirects are not followed, certificates are verified, and plain http is for this machine only, unless it is allowed. The
 * key is in no message: where a server's reply repeats it, it is replaced.
 *
 * libcurl is found when the first server is opened (libcurl.so.4, or the file that LLMC_CURL_LIBRARY names), so programs
 * without such a judge do not need it.
 *
 *     JudgeHttp h;
 *     const JudgeHttpOptions o = {
 *         .url = "http://localhost:8000/v1", .key_env = "OPENAI_API_KEY", .parallel = 16, .retries = 5, .timeout = 60};
 *     JudgeCall call[2] = {{.request = "{}"}, {.request = "{}"}};
 *     if (!judge_http_open(&h, &o, &e)) return false;
 *     if (!judge_http_run(&h, call, 2, &e)) return false;           // call[i].reply, or call[i].why
 *     judge_http_close(&h);
 */
#ifndef LLMC_JUDGE_HTTP_H
#define LLMC_JUDGE_HTTP_H

#include "../base/clock.h"   /* clock_seconds */
#include "../base/error.h"   /* Error, error_set, checked_object, xstrdup */
#include "../base/library.h" /* Library, library_open */
#include "../base/random.h"  /* RANDOM_JUDGE, random_uniform */
#include "../base/text.h"    /* TextBuffer, text_free, text_append, text_clear, ... */
#include "cache.h"           /* JudgeCache, judge_cache_close, judge_cache_find, judge_cache_open, ... */
#include "reply.h"           /* JUDGE_REPLY_MAX, JudgeReply, judge_reply_free, judge_reply_parse */
#define CURL_DISABLE_TYPECHECK
#include <curl/curl.h>
#include <dlfcn.h>

/* The functions of libcurl that are used here. */
#define CURL_FUNCTIONS(X)                                                                                              \
    X(global_init)                                                                                                     \
    X(easy_init)                                                                                                       \
    X(easy_setopt)                                                                                                     \
    X(easy_getinfo)                                                                                                    \
    X(easy_strerror)                                                                                                   \
    X(easy_cleanup)                                                                                                    \
    X(slist_append)                                                                                                    \
    X(slist_free_all)                                                                                                  \
    X(multi_init)                                                                                                      \
    X(multi_add_handle)                                                                                                \
    X(multi_remove_handle)                                                                                             \
    X(multi_perform)                                                                                                   \
    X(multi_poll)                                                                                                      \
    X(multi_info_read)                                                                                                 \
    X(multi_cleanup)

/* curl.h has macros of these names, which check the number of arguments. */
#undef curl_easy_setopt
#undef curl_easy_getinfo

typedef struct CurlTable {
#define CURL_MEMBER(name) __typeof__(&curl_##name) name;
    CURL_FUNCTIONS(CURL_MEMBER)
#undef CURL_MEMBER
} CurlTable;

typedef struct JudgeHttpOptions {
    const char *url, *key_env, *cache;
    int64_t parallel, retries;
    double timeout; /* seconds of a request */
    bool insecure;
    uint64_t seed;
} JudgeHttpOptions;

typedef struct JudgeHttp {
    JudgeHttpOptions o;
    CurlTable curl;
    CURLM *multi;
    struct curl_slist *headers;
    char *address, *key;
    JudgeCache cache;
    double first_wait; /* seconds before the second try */
    int64_t waits;     /* for the jitter */
    double cached, retries;
} JudgeHttp;

/* A request and its reply. */
typedef struct JudgeCall {
    const char *request; /* JSON */
    char *reply;         /* (length) and a NUL: the body of a reply of the right shape; NULL: failed */
    size_t length;
    Error why; /* it failed */
    /* while it runs */
    CURL *easy;
    TextBuffer body;
    bool done, too_long;
    int tries;
    double from; /* when it may be sent */
} JudgeCall;

static inline void judge_call_free(JudgeCall *c) {
    free(c->reply);
    text_free(&c->body);
    *c = (JudgeCall){0};
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static inline bool judge_http_library(CurlTable *t, Error *e) {
    Library l;
    if (!library_open(&l, "libcurl.so.4", "LLMC_CURL_LIBRARY", RTLD_LOCAL,
                      "--judge-url needs libcurl; install the package libcurl4", e))
        return false;
    const struct {
        const char *name;
        void *at;
    } all[] = {
#define CURL_ROW(name) {"curl_" #name, &t->name},
        CURL_FUNCTIONS(CURL_ROW)
#undef CURL_ROW
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        void *found = dlsym(l.handle, all[i].name);
        if (!found) return error_set(e, "%s: has no function %s", l.path, all[i].name);
        memcpy(all[i].at, &found, sizeof found);
    }
    return t->global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK || error_set(e, "%s: cannot be started", l.path);
}

static inline void judge_http_close(JudgeHttp *h) {
    if (h->multi) h->curl.multi_cleanup(h->multi);
    if (h->headers) h->curl.slist_free_all(h->headers);
    judge_cache_close(&h->cache);
    free(h->address), free(h->key);
    *h = (JudgeHttp){0};
}

/* Checks that the address is https, or http on this machine, and names no user. */
static inline bool judge_http_address(const JudgeHttpOptions *o, Error *e) {
    const bool plain = !strncasecmp(o->url, "http://", 7), secure = !strncasecmp(o->url, "https://", 8);
    const char *host = o->url + (secure ? 8 : 7);
    if (!plain && !secure) return error_set(e, "--judge-url %.200s: must begin with https:// or http://", o->url);
    const size_t n = strcspn(host, "/?#"), name = *host == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":/?#");
    if (memchr(host, '@', n))
        return error_set(e,
                         "--judge-url: has a user or password, which would be shown; give the key by --judge-key-env");
    if (!n || host[n] == '?' || host[n] == '#')
        return error_set(e, "--judge-url %.200s: must be the address of a server, such as https://example.org/v1",
                         o->url);
    static const char *const own[] = {"localhost", "127.0.0.1", "[::1]"};
    for (int i = 0; i < 3; i++)
        if (strlen(own[i]) == name && !strncasecmp(host, own[i], name)) return true;
    return secure || o->insecure ||
           error_set(e,
                     "--judge-url %.200s: would send the key and the texts in plain text; use https, or give "
                     "--judge-insecure",
                     o->url);
}

/* Reads the key from its variable, if that is set. */
static inline bool judge_http_key(JudgeHttp *h, Error *e) {
    const char *key = getenv(h->o.key_env);
    if (!key || !*key) return true;
    for (const char *c = key; *c; c++)
        if (*c < 33 || *c > 126)
            return error_set(e, "%s: the key has blanks or other characters that a key cannot have", h->o.key_env);
    h->key = xstrdup(key);
    return true;
}

static inline bool judge_http_open(JudgeHttp *h, const JudgeHttpOptions *o, Error *e) {
    *h = (JudgeHttp){.o = *o, .first_wait = 1};
    TextBuffer text = {0};
    if (!judge_http_address(o, e) || !judge_http_key(h, e) || !judge_http_library(&h->curl, e)) {
        free(h->key);
        *h = (JudgeHttp){0};
        return false;
    }
    size_t n = strlen(o->url);
    while (n && o->url[n - 1] == '/') n--;
    text_append(&text, o->url, n);
    text_string(&text, "/chat/completions");
    h->address = text.text;
    text = (TextBuffer){0};
    h->headers = h->curl.slist_append(NULL, "Content-Type: application/json");
    if (h->key) {
        text_format(&text, "Authorization: Bearer %s", h->key);
        h->headers = h->curl.slist_append(h->headers, text.text);
        text_free(&text);
    }
    h->multi = (CURLM *)checked_object(h->curl.multi_init(), "connections");
    if (!o->cache || judge_cache_open(&h->cache, o->cache, e)) return true;
    judge_http_close(h);
    return false;
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */

/* Appends the first bytes of a server's text as it can be printed, without the key. */
static inline void judge_http_show(const JudgeHttp *h, const char *text, size_t n, TextBuffer *out) {
    TextBuffer clean = {0};
    text_clear(&clean);
    for (size_t i = 0; i < n;) {
        const size_t key = h->key ? strlen(h->key) : 0;
        if (key && n - i >= key && !memcmp(text + i, h->key, key)) {
            text_string(&clean, "[key]");
            i += key;
        } else text_append(&clean, text + i++, 1);
        if (clean.length > 200) break;
    }
    text_visible(out, clean.text, clean.length < 200 ? clean.length : 200, false);
    text_free(&clean);
}

/* Sets the error: what, then the beginning of the reply. */
static inline bool judge_http_failed(const JudgeHttp *h, const JudgeCall *c, const char *what, Error *e) {
    TextBuffer said = {0};
    text_clear(&said);
    if (c->body.length) judge_http_show(h, c->body.text, c->body.length, &said);
    error_set(e, "%.300s %s%s%s%s", h->address, what, said.length ? ": '" : "", said.text, said.length ? "'" : "");
    text_free(&said);
    return false;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* libcurl's callback for a part of a reply. */
static inline size_t judge_http_receive(char *bytes, size_t size, size_t count, void *call) {
    JudgeCall *c = (JudgeCall *)call;
    const size_t n = size * count;
    if (c->body.length + n > JUDGE_REPLY_MAX) {
        c->too_long = true;
        return 0;
    }
    text_append(&c->body, bytes, n);
    return n;
}

static inline void judge_http_send(JudgeHttp *h, JudgeCall *c) {
    CurlTable *t = &h->curl;
    c->easy = (CURL *)checked_object(t->easy_init(), "a connection");
    text_clear(&c->body);
    c->too_long = false;
    c->tries++;
    t->easy_setopt(c->easy, CURLOPT_URL, h->address);
    t->easy_setopt(c->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    t->easy_setopt(c->easy, CURLOPT_FOLLOWLOCATION, 0L);
    t->easy_setopt(c->easy, CURLOPT_NOSIGNAL, 1L);
    t->easy_setopt(c->easy, CURLOPT_HTTPHEADER, h->headers);
    t->easy_setopt(c->easy, CURLOPT_POSTFIELDSIZE, (long)strlen(c->request));
    t->easy_setopt(c->easy, CURLOPT_POSTFIELDS, c->request);
    t->easy_setopt(c->easy, CURLOPT_ACCEPT_ENCODING, "");
    t->easy_setopt(c->easy, CURLOPT_TIMEOUT_MS, (long)(h->o.timeout * 1000) + 1);
    t->easy_setopt(c->easy, CURLOPT_WRITEFUNCTION, judge_http_receive);
    t->easy_setopt(c->easy, CURLOPT_WRITEDATA, c);
    t->easy_setopt(c->easy, CURLOPT_PRIVATE, c);
    t->multi_add_handle(h->multi, c->easy);
}

/* Whether no other request could succeed after this end of one: *e has the reason. */
static inline bool judge_http_hopeless(const JudgeHttp *h, const JudgeCall *c, CURLcode code, long status, Error *e) {
    char what[160];
    switch (code) {
    case CURLE_OK: break;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_URL_MALFORMAT:
        snprintf(what, sizeof what, "cannot be asked: %s", h->curl.easy_strerror(code));
        judge_http_failed(h, c, what, e);
        return true;
    default: return false;
    }
    if (status >= 300 && status < 400) {
        snprintf(what, sizeof what, "redirects (status %ld), which is not followed; give the final address", status);
        judge_http_failed(h, c, what, e);
        return true;
    }
    if (status != 401 && status != 403 && status != 404) return false;
    snprintf(what, sizeof what, "refuses the request (status %ld)%s", status,
             status == 404 ? ""
             : h->key      ? "; is the key right?"
                           : "; is the variable of --judge-key-env set?");
    judge_http_failed(h, c, what, e);
    return true;
}

/* Takes the end of a request: its reply, its failure, or another try. Returns false if the whole call fails. */
static inline bool judge_http_end(JudgeHttp *h, JudgeCall *c, CURLcode code, Error *e) {
    long status = 0;
    curl_off_t after = 0;
    char what[160];
    JudgeReply reply;
    Error shape;
    h->curl.easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    h->curl.easy_getinfo(c->easy, CURLINFO_RETRY_AFTER, &after);
    h->curl.multi_remove_handle(h->multi, c->easy);
    h->curl.easy_cleanup(c->easy);
    c->easy = NULL;
    if (judge_http_hopeless(h, c, code, status, e)) return false;
    const bool again = (code != CURLE_OK && !c->too_long) || status == 408 || status == 429 || status >= 500;
    if (again && c->tries <= h->o.retries) {
        const double wait = h->first_wait * (double)(1ull << (c->tries < 11 ? c->tries - 1 : 10));
        const double jitter = 0.5 + random_uniform(h->o.seed, RANDOM_JUDGE, (uint64_t)h->waits++) / 2;
        const double asked = fmin((double)after, h->o.timeout); /* a server cannot make us wait for ever */
        c->from = clock_seconds() + fmax(wait * jitter, asked);
        h->retries++;
        return true;
    }
    c->done = true;
    if (c->too_long) {
        snprintf(what, sizeof what, "sent more than %d MiB", JUDGE_REPLY_MAX >> 20);
        judge_http_failed(h, c, what, &c->why);
    } else if (code != CURLE_OK) {
        snprintf(what, sizeof what, "did not answer: %s", h->curl.easy_strerror(code));
        judge_http_failed(h, c, what, &c->why);
    } else if (status != 200) {
        snprintf(what, sizeof what, "answered with status %ld", status);
        judge_http_failed(h, c, what, &c->why);
    } else if (!judge_reply_parse(&reply, c->body.text, c->body.length, &shape)) {
        snprintf(what, sizeof what, "sent a reply that %.120s", shape.text);
        judge_http_failed(h, c, what, &c->why);
    } else {
        judge_reply_free(&reply);
        c->length = c->body.length;
        c->reply = c->body.text;
        c->body = (TextBuffer){0};
        return judge_cache_put(&h->cache, h->address, c->request, c->reply, c->length, e);
    }
    return true;
}

/* Starts calls that may run. Returns the number that run; *next: when the next one may be sent, or INFINITY. */
static inline int64_t judge_http_start(JudgeHttp *h, JudgeCall *call, int64_t n, double now, double *next) {
    int64_t running = 0;
    *next = INFINITY;
    for (int64_t i = 0; i < n; i++) running += call[i].easy != NULL;
    for (int64_t i = 0; i < n; i++) {
        JudgeCall *c = &call[i];
        if (c->done || c->easy) continue;
        if (running >= h->o.parallel) break;
        if (c->from > now) *next = fmin(*next, c->from);
        else {
            judge_http_send(h, c);
            running++;
        }
    }
    return running;
}

/* Runs n calls, and returns when each has its reply or has failed. Fails as a whole if no call could succeed, and if the cache
 * cannot be written. */
static inline bool judge_http_run(JudgeHttp *h, JudgeCall *call, int64_t n, Error *e) {
    int64_t left = 0;
    bool ok = true;
    for (int64_t i = 0; i < n; i++) {
        call[i].reply = judge_cache_find(&h->cache, h->address, call[i].request, &call[i].length);
        call[i].done = call[i].reply != NULL;
        h->cached += call[i].done;
        left += !call[i].done;
    }
    while (ok && left) {
        double next;
        int running, queued;
        const double now = clock_seconds();
        judge_http_start(h, call, n, now, &next);
        h->curl.multi_perform(h->multi, &running);
        for (CURLMsg *m; ok && (m = h->curl.multi_info_read(h->multi, &queued));) {
            char *private = NULL;
            const CURLcode code = m->data.result;
            if (m->msg != CURLMSG_DONE) continue;
            h->curl.easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &private);
            JudgeCall *c = (JudgeCall *)(void *)private;
            ok = judge_http_end(h, c, code, e);
            left -= c->done;
        }
        const double wait = fmin(fmax(next - clock_seconds(), 0), 0.2);
        if (ok && left) h->curl.multi_poll(h->multi, NULL, 0, (int)(wait * 1000) + 1, NULL);
    }
    for (int64_t i = 0; i < n; i++) {
        if (!call[i].easy) continue;
        h->curl.multi_remove_handle(h->multi, call[i].easy);
        h->curl.easy_cleanup(call[i].easy);
        call[i].easy = NULL;
    }
    return ok;
}

#endif
