/* http.h - the server's HTTP: routes, limits, keys, by libmicrohttpd.
 *
 *   GET  /                      a page for chats, which needs nothing else (/chat.css, /chat.js)
 *   GET  /v1/models             the model
 *   POST /v1/completions        request.h
 *   POST /v1/chat/completions
 *
 * With a second engine (ServeEngine.other) requests choose a model by its name.
 *
 * With a gateway (gateway.h) there is no page: requests belong to trajectories, whose keys are in the path, /r/KEY/v1/..., or
 * in the header Authorization.
 *
 * Each connection has a thread, which reads a request, submits a job and waits. Limits: SERVE_BODY bytes of a body,
 * SERVE_CONNECTIONS connections, SERVE_PATIENCE seconds until a request is complete and until a client has read more of an
 * answer. A client that closes its connection ends its job. Requests must say that they are JSON, and, unless other machines
 * may use the server, be for this machine by name: so that no web page can send them.
 *
 *     ServeHttp h = {.engine = &server, .any = false, .key = NULL};
 *     if (!serve_http_open(&h, "127.0.0.1:8000", &e)) die("%s", e.text);
 *     serve_engine_run(&server, stopping, serve_http_expire, &h, &e);
 *     serve_http_close(&h);
 */
#ifndef LLMC_SERVE_HTTP_H
#define LLMC_SERVE_HTTP_H

#include "../base/clock.h" /* clock_seconds */
#include "../base/error.h" /* error_set, Error, xcalloc */
#include "../base/text.h"  /* TextBuffer, text_free, text_append */
#include "answer.h"        /* ServePieces, serve_answer, serve_chat_choice, serve_dump, ... */
#include "engine.h"        /* ServeEngine, ServeJob, serve_engine_forget, serve_job_wait, ... */
#include "gateway.h"       /* ServeTrajectory, serve_gateway_leave, SERVE_KEY, serve_gateway_path, ... */
#include "page.h"          /* SERVE_PAGE_POLICY, ServePage, serve_page */
#include "request.h"       /* ServeFault, serve_refuse, SERVE_CHAT, ServeKind, ... */
#include <arpa/inet.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <time.h>

enum {
    SERVE_BODY = 8 << 20,
    SERVE_CONNECTIONS = 64,
    SERVE_PATIENCE = 60,
};

/* A connection, known by its socket; -1: none. */
typedef struct ServeClient {
    int socket;
    double deadline; /* when it is closed; 0: it waits for the engine */
} ServeClient;

typedef struct ServeHttp {
    ServeEngine *engine;
    bool any;              /* other machines may use it */
    const char *key;       /* or NULL */
    ServeGateway *gateway; /* or NULL */
    double patience;       /* 0: SERVE_PATIENCE */
    struct MHD_Daemon *daemon;
    char address[INET6_ADDRSTRLEN + 16]; /* with the port */
    pthread_mutex_t lock;                /* of clients */
    pthread_mutex_t text;                /* of the tokenizer, the template and next_number */
    uint64_t next_number; /* of a request: begins with the time of day, so that another server's are different */
    ServeClient client[2 * SERVE_CONNECTIONS];
} ServeHttp;

/* A request while its body comes. */
typedef struct ServeCall {
    TextBuffer body;
    ServeFault fault; /* status 0: none yet */
} ServeCall;

/* ---- connections ----------------------------------------------------------------------------------------------- */

static inline int serve_socket(struct MHD_Connection *c) {
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? info->connect_fd : -1;
}

/* Sets the seconds that a connection has from now; 0: no limit. */
static inline void serve_patience(ServeHttp *h, int socket, bool limited) {
    pthread_mutex_lock(&h->lock);
    for (size_t i = 0; i < sizeof h->client / sizeof *h->client; i++)
        if (h->client[i].socket == socket)
            h->client[i].deadline = limited ? clock_seconds() + (h->patience > 0 ? h->patience : SERVE_PATIENCE) : 0;
    pthread_mutex_unlock(&h->lock);
}

static inline void serve_on_connection(void *context, struct MHD_Connection *c, void **own,
                                       enum MHD_ConnectionNotificationCode code) {
    ServeHttp *h = (ServeHttp *)context;
    const int socket = serve_socket(c), from = code == MHD_CONNECTION_NOTIFY_STARTED ? -1 : socket;
    (void)own;
    pthread_mutex_lock(&h->lock);
    for (size_t i = 0; i < sizeof h->client / sizeof *h->client; i++)
        if (h->client[i].socket == from) {
            h->client[i].socket = from < 0 ? socket : -1;
            break;
        }
    pthread_mutex_unlock(&h->lock);
    if (from < 0) serve_patience(h, socket, true);
}

/* Closes the connections whose time is over. Called about once a second. */
static inline void serve_http_expire(void *context) {
    ServeHttp *h = (ServeHttp *)context;
    const double now = clock_seconds();
    pthread_mutex_lock(&h->lock);
    for (size_t i = 0; i < sizeof h->client / sizeof *h->client; i++)
        if (h->client[i].socket >= 0 && h->client[i].deadline > 0 && now > h->client[i].deadline)
            shutdown(h->client[i].socket, SHUT_RDWR);
    pthread_mutex_unlock(&h->lock);
}

/* Whether the client has closed the connection. */
static inline bool serve_gone(int socket) {
    char byte;
    return recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* ---- answers --------------------------------------------------------------------------------------------------- */

/* The headers of every answer; they let no other page show or read it. */
static inline void serve_headers(struct MHD_Response *r, const char *type) {
    MHD_add_response_header(r, "Content-Type", type);
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(r, "Cache-Control", "no-store");
}

/* Sends a response, which it takes over. */
static inline enum MHD_Result serve_send(struct MHD_Connection *c, int status, struct MHD_Response *r) {
    const enum MHD_Result sent = MHD_queue_response(c, (unsigned)status, r);
    MHD_destroy_response(r);
    return sent;
}

/* Sends n bytes. header: a further header, whose value is given, or NULL. */
static inline enum MHD_Result serve_send_text(struct MHD_Connection *c, int status, const char *type, const char *text,
                                              size_t n, const char *header, const char *value) {
    struct MHD_Response *r = MHD_create_response_from_buffer(n, (void *)text, MHD_RESPMEM_MUST_COPY);
    if (!r) return MHD_NO;
    serve_headers(r, type);
    if (header) MHD_add_response_header(r, header, value);
    return serve_send(c, status, r);
}

static inline enum MHD_Result serve_send_json(struct MHD_Connection *c, int status, json_t *answer, const char *header,
                                              const char *value) {
    char *text = serve_dump(answer);
    const enum MHD_Result sent = serve_send_text(c, status, "application/json", text, strlen(text), header, value);
    free(text);
    json_decref(answer);
    return sent;
}

static inline enum MHD_Result serve_send_fault(struct MHD_Connection *c, const ServeFault *f) {
    const char *header = NULL, *value = NULL;
    if (f->status == 401) header = "WWW-Authenticate", value = "Bearer";
    if (f->status == 405) header = "Allow", value = f->allow;
    if (f->status == 429) header = "Retry-After", value = "1";
    return serve_send_json(c, f->status, serve_error(f), header, value);
}

/* ---- streams --------------------------------------------------------------------------------------------------- */

typedef struct ServeStream {
    ServeHttp *h;
    ServeEngine *x;
    ServeJob *job;
    ServePieces pieces;
    TextBuffer ready; /* events that are not sent yet */
    size_t sent;
    int socket;
    bool done;
} ServeStream;

/* Adds the answer of a stream that is over to its trajectory. Called with the engine's lock. */
static inline void serve_stream_record(ServeStream *s) {
    const ServeJob *job = s->job;
    if (!job->trajectory || job->failed || job->cancelled) return;
    json_t *choice =
        job->request.kind == SERVE_CHAT ? serve_chat_choice(s->h->engine->serve, &job->choice[0], 0) : NULL;
    serve_trajectory_record(job->trajectory, job, json_object_get(choice, "message"));
    json_decref(choice);
}

/* Copies the next bytes of the stream, for which it waits. */
static inline ssize_t serve_stream_read(void *context, uint64_t at, char *to, size_t room) {
    ServeStream *s = (ServeStream *)context;
    ServeEngine *x = s->x;
    (void)at;
    if (s->sent == s->ready.length) {
        bool gone = false;
        s->sent = s->ready.length = 0;
        if (s->done) return MHD_CONTENT_READER_END_OF_STREAM;
        serve_patience(s->h, s->socket, false);
        pthread_mutex_lock(&x->lock);
        while (!(s->done = serve_pieces_next(&s->pieces, &s->ready)) && !s->ready.length && !gone) {
            serve_job_wait(x, s->job);
            gone = serve_gone(s->socket);
        }
        if (s->done) serve_stream_record(s);
        pthread_mutex_unlock(&x->lock);
        if (gone) return MHD_CONTENT_READER_END_WITH_ERROR;
        serve_patience(s->h, s->socket, true);
    }
    size_t n = s->ready.length - s->sent;
    if (n > room) n = room;
    memcpy(to, s->ready.text + s->sent, n);
    s->sent += n;
    return (ssize_t)n;
}

static inline void serve_stream_free(void *context) {
    ServeStream *s = (ServeStream *)context;
    ServeTrajectory *y = s->job->trajectory;
    serve_pieces_close(&s->pieces);
    serve_engine_forget(s->x, s->job);
    if (y) serve_gateway_leave(s->h->gateway, y);
    text_free(&s->ready);
    free(s);
}

static inline enum MHD_Result serve_stream(ServeHttp *h, ServeEngine *x, struct MHD_Connection *c, ServeJob *job) {
    ServeStream *s = (ServeStream *)xcalloc(1, sizeof *s);
    *s = (ServeStream){.h = h, .x = x, .job = job, .socket = serve_socket(c)};
    serve_pieces_open(&s->pieces, x, job);
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 1 << 14, serve_stream_read, s, serve_stream_free);
    if (!r) {
        serve_stream_free(s);
        return MHD_NO;
    }
    serve_headers(r, "text/event-stream");
    return serve_send(c, 200, r);
}

/* ---- requests -------------------------------------------------------------------------------------------------- */

/* Waits for a job and sends its answer. */
static inline enum MHD_Result serve_whole(ServeHttp *h, ServeEngine *x, struct MHD_Connection *c, ServeJob *job) {
    ServeTrajectory *y = job->trajectory;
    const int socket = serve_socket(c);
    ServeFault fault = {0};
    bool gone = false;
    serve_patience(h, socket, false);
    pthread_mutex_lock(&x->lock);
    while (job->left && !gone) {
        serve_job_wait(x, job);
        gone = serve_gone(socket);
    }
    pthread_mutex_unlock(&x->lock);
    serve_patience(h, socket, true);
    if (!gone && job->failed) fault = (ServeFault){.status = x->ended ? 503 : 500, .e = job->e};
    if (!gone && job->cancelled) fault = (ServeFault){.status = 503, .e = {"the trajectory has ended"}};
    json_t *answer = gone || job->failed || job->cancelled ? NULL : serve_answer(x, job);
    if (answer && y)
        serve_trajectory_record(y, job,
                                json_object_get(json_array_get(json_object_get(answer, "choices"), 0), "message"));
    serve_engine_forget(x, job);
    if (y) serve_gateway_leave(h->gateway, y);
    if (gone) return MHD_NO;
    return answer ? serve_send_json(c, 200, answer, NULL, NULL) : serve_send_fault(c, &fault);
}

/* The trajectory of a request, which waits until it may go on with it; NULL: refused. */
static inline ServeTrajectory *serve_enter(ServeHttp *h, struct MHD_Connection *c, const char *url, ServeFault *f) {
    const char *bearer = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Authorization");
    char key[SERVE_KEY];
    serve_gateway_path(h->gateway, url, key);
    if (!*key && bearer && !strncasecmp(bearer, "Bearer ", 7)) snprintf(key, sizeof key, "%s", bearer + 7);
    serve_patience(h, serve_socket(c), false);
    ServeTrajectory *y = serve_gateway_enter(h->gateway, key, f);
    serve_patience(h, serve_socket(c), true);
    return y;
}

/* The engine of the model that a request names; the first one if it names no other. */
static inline ServeEngine *serve_choose(const ServeHttp *h, const json_t *body) {
    ServeEngine *x = h->engine;
    const char *name = json_string_value(json_object_get(body, "model"));
    return x->other && name && !strcmp(name, x->other->serve->name) ? x->other : x;
}

/* Reads the request of a complete body, for the model that it names, of trajectory y or of none. */
static inline bool serve_read(ServeHttp *h, ServeKind kind, const TextBuffer *text, ServeTrajectory *y, ServeRequest *q,
                              ServeEngine **x, ServeFault *f) {
    json_t *body = serve_body(text->text ? text->text : "", text->length, f);
    if (!body) return false;
    *x = serve_choose(h, body);
    pthread_mutex_lock(&h->text);
    const bool ok =
        serve_request(q, (*x)->serve, kind, body, f) && (!y || serve_trajectory_prepare(h->gateway, y, q, f));
    if (ok && !q->named) q->number = h->next_number++;
    pthread_mutex_unlock(&h->text);
    json_decref(body);
    return ok;
}

/* Carries out the request of a complete body. */
static inline enum MHD_Result serve_post(ServeHttp *h, struct MHD_Connection *c, const char *url, ServeKind kind,
                                         const ServeCall *call) {
    ServeFault f = {0};
    ServeRequest q;
    ServeEngine *x = h->engine;
    ServeTrajectory *y = h->gateway ? serve_enter(h, c, url, &f) : NULL;
    if (f.status) return serve_send_fault(c, &f);
    if (!serve_read(h, kind, &call->body, y, &q, &x, &f)) {
        if (y) serve_gateway_leave(h->gateway, y);
        return serve_send_fault(c, &f);
    }
    const bool stream = q.stream;
    ServeJob *job = serve_job_new(&q);
    job->trajectory = y;
    if (serve_engine_submit(x, job)) return stream ? serve_stream(h, x, c, job) : serve_whole(h, x, c, job);
    if (job->failed) serve_refuse(&f, 503, "", "the server is stopping");
    else {
        serve_refuse(&f, 429, "", "%d requests are waiting, which is the limit; try again later", x->queue);
        serve_code(&f, "rate_limit_exceeded");
    }
    serve_job_free(job);
    if (y) serve_gateway_leave(h->gateway, y);
    return serve_send_fault(c, &f);
}

static inline json_t *serve_model_entry(const ServeModel *m) {
    return json_pack("{s:s,s:s,s:i,s:s,s:i,s:b}", "id", m->name, "object", "model", "created", 0, "owned_by", "llmc",
                     "max_model_len", m->length, "chat", m->text->present && m->text->has_template);
}

static inline enum MHD_Result serve_models(ServeHttp *h, struct MHD_Connection *c) {
    json_t *list = json_pack("[o]", serve_model_entry(h->engine->serve));
    if (h->engine->other) json_array_append_new(list, serve_model_entry(h->engine->other->serve));
    return serve_send_json(c, 200, json_pack("{s:s,s:o}", "object", "list", "data", list), NULL, NULL);
}

/* Compares without telling, by its time, how much agrees. */
static inline bool serve_same_key(const char *given, const char *key) {
    const size_t n = strlen(given), m = strlen(key);
    unsigned different = n != m;
    for (size_t i = 0; i < n; i++) different |= (unsigned char)given[i] ^ (unsigned char)key[m ? i % m : 0];
    return !different;
}

/* Whether a Host header names this machine. */
static inline bool serve_is_local(const char *host) {
    static const char *const names[] = {"localhost", "127.", "[::1]"};
    for (size_t i = 0; host && i < 3; i++) {
        const size_t n = strlen(names[i]);
        if (strncasecmp(host, names[i], n)) continue;
        const char *rest = host + n;
        if (i == 1) rest += strspn(rest, "0123456789.");
        if (!*rest || *rest == ':') return true;
    }
    return false;
}

/* Checks what comes before the body. */
static inline bool serve_allowed(const ServeHttp *h, struct MHD_Connection *c, bool post, bool page, ServeFault *f) {
    const char *host = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Host");
    const char *key = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Authorization");
    const char *type = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Content-Type");
    const char *length = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Content-Length");
    if (!h->any && !serve_is_local(host))
        return serve_refuse(
            f, 403, "",
            "this server is for its own machine: ask for localhost or 127.0.0.1, or start it with --serve-any");
    if (h->key && !page && (!key || strncasecmp(key, "Bearer ", 7) || !serve_same_key(key + 7, h->key)))
        return serve_refuse(f, 401, "",
                            "the header Authorization: Bearer KEY with the server's key is missing or wrong") ||
               serve_code(f, "invalid_api_key");
    if (post && (!type || strncasecmp(type, "application/json", 16)))
        return serve_refuse(f, 415, "", "the header Content-Type is not application/json");
    return !length || strtoull(length, NULL, 10) <= SERVE_BODY ||
           serve_refuse(f, 413, "", "the body has more than %d bytes", SERVE_BODY);
}

/* libmicrohttpd's handler: called at the end of the headers, for each part of the body, and after it. */
static inline enum MHD_Result serve_on_request(void *context, struct MHD_Connection *c, const char *url,
                                               const char *method, const char *version, const char *data, size_t *size,
                                               void **own) {
    ServeHttp *h = (ServeHttp *)context;
    ServeCall *call = (ServeCall *)*own;
    const bool get = !strcmp(method, "GET") || !strcmp(method, "HEAD"), post = !strcmp(method, "POST");
    char key[SERVE_KEY];
    const char *path = serve_gateway_path(h->gateway, url, key);
    const ServePage *page = h->gateway ? NULL : serve_page(path);
    const ServeKind kind = !strcmp(path, "/v1/chat/completions") ? SERVE_CHAT : SERVE_COMPLETION;
    const bool complete = kind == SERVE_CHAT || !strcmp(path, "/v1/completions"), models = !strcmp(path, "/v1/models");
    (void)version;
    if (!call) {
        *own = call = (ServeCall *)xcalloc(1, sizeof *call);
        if (!page && !complete && !models) serve_refuse(&call->fault, 404, "", "there is no %.200s here", url);
        else if (complete ? !post : !get) {
            serve_refuse(&call->fault, 405, "", "%.20s is no method of %.200s", method, url);
            call->fault.allow = complete ? "POST" : "GET, HEAD";
        } else serve_allowed(h, c, complete, page != NULL, &call->fault);
        /* a body that is too long is not waited for */
        return call->fault.status == 413 ? serve_send_fault(c, &call->fault) : MHD_YES;
    }
    if (*size) {
        if (call->body.length + *size > SERVE_BODY)
            serve_refuse(&call->fault, 413, "", "the body has more than %d bytes", SERVE_BODY);
        else if (!call->fault.status) text_append(&call->body, data, *size);
        if (call->fault.status) text_free(&call->body);
        *size = 0;
        return MHD_YES;
    }
    serve_patience(h, serve_socket(c), true);
    if (call->fault.status) return serve_send_fault(c, &call->fault);
    if (page)
        return serve_send_text(c, 200, page->type, page->text(), strlen(page->text()), "Content-Security-Policy",
                               SERVE_PAGE_POLICY);
    return models ? serve_models(h, c) : serve_post(h, c, url, kind, call);
}

static inline void serve_on_completed(void *context, struct MHD_Connection *c, void **own,
                                      enum MHD_RequestTerminationCode why) {
    ServeCall *call = (ServeCall *)*own;
    (void)why;
    if (call) text_free(&call->body);
    free(call);
    *own = NULL;
    serve_patience((ServeHttp *)context, serve_socket(c), true);
}

/* ---- the server ------------------------------------------------------------------------------------------------ */

/* Divides HOST:PORT; host may be in brackets. */
static inline bool serve_divide(const char *where, char host[256], char port[8], Error *e) {
    const char *colon = strrchr(where, ':');
    const size_t n = colon ? (size_t)(colon - where) : 0;
    const bool brackets = n > 1 && where[0] == '[' && where[n - 1] == ']';
    if (!colon || !n || n > 255 || strlen(colon + 1) > 5 || !colon[1] ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1) || atoi(colon + 1) > 65535)
        return error_set(e, "'%.100s': expected HOST:PORT, such as 127.0.0.1:8000", where);
    snprintf(host, 256, "%.*s", (int)(n - 2 * brackets), where + brackets);
    snprintf(port, 8, "%s", colon + 1);
    return true;
}

static inline bool serve_is_loopback(const struct sockaddr *a) {
    if (a->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24 == 127;
    return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

/* Opens a socket that listens at an address; -1: failed. */
static inline int serve_listen(const ServeHttp *h, const char *where, Error *e) {
    char host[256], port[8];
    struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    const int yes = 1;
    if (!serve_divide(where, host, port, e)) return -1;
    const int bad = getaddrinfo(host, port, &hints, &found);
    if (bad) return error_set(e, "'%.100s': %s", host, gai_strerror(bad)), -1;
    const struct sockaddr *a = found->ai_addr;
    int s = -1;
    if (!h->any && !serve_is_loopback(a))
        error_set(
            e,
            "'%.100s' can be reached from other machines, where anyone could use it: add --serve-any if that is meant",
            host);
    else if ((s = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0 ||
             setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) || bind(s, a, found->ai_addrlen) ||
             listen(s, 128)) {
        error_set(e, "cannot listen at %.100s: %s", where, strerror(errno));
        if (s >= 0) close(s);
        s = -1;
    }
    freeaddrinfo(found);
    return s;
}

/* Sets the address with the port that was chosen. */
static inline void serve_name(ServeHttp *h, int s) {
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    char host[INET6_ADDRSTRLEN + 1] = "?", port[8] = "?";
    if (!getsockname(s, (struct sockaddr *)&a, &n))
        getnameinfo((struct sockaddr *)&a, n, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(h->address, sizeof h->address, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

/* Starts to answer. h: with engine, any and key set. */
static inline bool serve_http_open(ServeHttp *h, const char *where, Error *e) {
    const int s = serve_listen(h, where, e);
    if (s < 0) return false;
    serve_name(h, s);
    for (size_t i = 0; i < sizeof h->client / sizeof *h->client; i++) h->client[i].socket = -1;
    pthread_mutex_init(&h->lock, NULL);
    pthread_mutex_init(&h->text, NULL);
    h->next_number = (uint64_t)time(NULL) << 20;
    h->daemon =
        MHD_start_daemon(MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_ITC,
                         0, NULL, NULL, serve_on_request, h, MHD_OPTION_LISTEN_SOCKET, s, MHD_OPTION_CONNECTION_LIMIT,
                         (unsigned)SERVE_CONNECTIONS, MHD_OPTION_NOTIFY_COMPLETED, serve_on_completed, h,
                         MHD_OPTION_NOTIFY_CONNECTION, serve_on_connection, h, MHD_OPTION_END);
    if (h->daemon) return true;
    close(s);
    return error_set(e, "cannot start the threads of the server");
}

/* Ends all connections. The engine must have ended before. */
static inline void serve_http_close(ServeHttp *h) {
    if (!h->daemon) return;
    MHD_stop_daemon(h->daemon);
    pthread_mutex_destroy(&h->lock);
    pthread_mutex_destroy(&h->text);
    h->daemon = NULL;
}

#endif
