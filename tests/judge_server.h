/* judge_server.h - a server of chat completions that misbehaves: the first part of a request's path says how.
 *
 *     JudgeServer s = judge_server_start();                        // http://127.0.0.1:PORT/NAME is a --judge-url
 *     ... s.shared->requests of all names ...
 *     judge_server_stop(&s);
 */
#ifndef TESTS_JUDGE_SERVER_H
#define TESTS_JUDGE_SERVER_H

#include "../llmc/base/text.h" /* TextBuffer, text_format, text_free */
#include <arpa/inet.h>
#include <cmocka.h> /* keep: assert_true */
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

typedef struct JudgeServer {
    pid_t pid;
    int port;
    struct {
        volatile int requests, authorized; /* of all names since the last reset; with an Authorization header */
    } * shared;
} JudgeServer;

/* Sends bytes; errors do not matter here. */
static inline void server_send(int to, const void *bytes, size_t n) {
    for (size_t at = 0; at < n;) {
        const ssize_t sent = send(to, (const char *)bytes + at, n - at, MSG_NOSIGNAL);
        if (sent <= 0) return;
        at += (size_t)sent;
    }
}

static inline void server_reply(int to, const char *status, const char *headers, const char *body, size_t n) {
    TextBuffer head = {0};
    text_format(&head, "%s\r\nContent-Type: application/json\r\nConnection: close\r\n%sContent-Length: %zu\r\n\r\n",
                status, headers, n);
    server_send(to, head.text, head.length);
    server_send(to, body, n);
    text_free(&head);
}

static inline void server_ok(int to, const char *body) { server_reply(to, "HTTP/1.1 200 OK", "", body, strlen(body)); }

/* Replies with a completion whose content is this JSON. */
static inline void server_says(int to, const char *content) {
    char body[600];
    snprintf(body, sizeof body, "{\"choices\":[{\"message\":{\"role\":\"assistant\",\"content\":%s}}]}", content);
    server_ok(to, body);
}

/* Replies with the likeliest tokens at one place after `before`, a list of places. */
static inline void server_tokens(int to, const char *before, const char *top) {
    char body[900];
    snprintf(
        body, sizeof body,
        "{\"choices\":[{\"message\":{\"content\":\"4\"},\"logprobs\":{\"content\":[%s{\"token\":\"4\",\"logprob\":-0.1,"
        "\"top_logprobs\":[%s]}]}}]}",
        before, top);
    server_ok(to, body);
}

/* The tokens of a line "NUMBER: LABEL", with the label's log-probability and other likely tokens. */
#define SERVER_LINE(number, label, logprob, other)                                                                     \
    "{\"token\":\"" number "\"},{\"token\":\":\"},{\"token\":\" " label "\",\"logprob\":" logprob                      \
    ",\"top_logprobs\":[{\"token\":\" " label "\",\"logprob\":" logprob "}" other "]},{\"token\":\"\\n\"}"
#define SERVER_OTHER ",{\"token\":\"no\",\"logprob\":-1.5}"

/* Replies with tokens. */
static inline void server_lines(int to, const char *tokens) {
    char body[1500];
    snprintf(body, sizeof body, "{\"choices\":[{\"message\":{\"content\":\"\"},\"logprobs\":{\"content\":[%s]}}]}",
             tokens);
    server_ok(to, body);
}

static inline void server_zipped(int to, const char *body, size_t n, bool whole) {
    uLongf size = compressBound(n) + 64;
    unsigned char *out = (unsigned char *)malloc(size);
    z_stream z = {0};
    deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
    z.next_in = (Bytef *)(uintptr_t)body;
    z.avail_in = (uInt)n;
    z.next_out = out;
    z.avail_out = (uInt)size;
    deflate(&z, Z_FINISH);
    server_reply(to, "HTTP/1.1 200 OK", "Content-Encoding: gzip\r\n", (char *)out,
                 whole ? z.total_out : z.total_out / 2);
    deflateEnd(&z);
    free(out);
}

#define SERVER_GOOD "{\"choices\":[{\"message\":{\"content\":\"Score: 4\"}}]}"

/* Answers one request. tries: requests before this one. */
static inline void server_answer(int to, const char *name, const char *request, int tries) {
    static char big[5 << 20];
    const char *key = strstr(request, "Authorization:");
    char echo[300];
    snprintf(echo, sizeof echo, "you sent %.100s", key ? key : "nothing");
#define IS(x) (!strcmp(name, x))
    if (IS("good")) server_ok(to, SERVER_GOOD);
    else if (IS("json")) server_says(to, "\"because {\\\"score\\\": 2}\"");
    else if (IS("twice")) server_says(to, "\"Score: 3 is fair.\\nScore: 3\"");
    else if (IS("differ")) server_says(to, "\"Score: 3\\nScore: 5\"");
    else if (IS("range")) server_says(to, "\"Score: 9\"");
    else if (IS("zero")) server_says(to, "\"Score: 0\"");
    else if (IS("fraction")) server_says(to, "\"Score: 4/5\"");
    else if (IS("words")) server_says(to, "\"I like it, 5 stars\"");
    else if (IS("nan")) server_says(to, "\"Score: nan\"");
    else if (IS("hex")) server_says(to, "\"Score: 0x4\"");
    else if (IS("null")) server_says(to, "null");
    else if (IS("number")) server_says(to, "4");
    else if (IS("first")) server_says(to, "\"Score: 1\"");
    else if (IS("lines")) server_says(to, "\"1: yes\\n2: no\"");
    else if (IS("linesback")) server_says(to, "\"**2**: Yes\\n**1**: no\"");
    else if (IS("linesjson")) server_says(to, "\"{\\\"1\\\": \\\"no\\\",\\n \\\"2\\\": \\\"yes\\\"}\"");
    else if (IS("linesagree")) server_says(to, "\"1: yes\\n2: no\\n\\n1: yes\"");
    else if (IS("linesone")) server_says(to, "\"1: yes\"");
    else if (IS("linesmore")) server_says(to, "\"1: yes\\n2: no\\n3: yes\"");
    else if (IS("linesdiffer")) server_says(to, "\"1: yes\\n2: no\\n1: no\"");
    else if (IS("linesword")) server_says(to, "\"1: yes\\n2: perhaps\"");
    else if (IS("lineszero")) server_says(to, "\"0: yes\\n1: no\"");
    else if (IS("linestags")) server_says(to, "\"<1>no <2>yes\"");
    else if (IS("choices")) server_ok(to, "{\"choices\":[]}");
    else if (IS("list")) server_ok(to, "[4]");
    else if (IS("html")) server_ok(to, "<html>Score: 4</html>");
    else if (IS("empty")) server_ok(to, "");
    else if (IS("half")) server_ok(to, "{\"choices\":[{\"message\":{\"content\":\"Score: 4");
    else if (IS("double")) server_ok(to, "{\"choices\":[],\"choices\":[{\"message\":{\"content\":\"Score: 4\"}}]}");
    else if (IS("deep")) {
        memset(big, '[', 100000);
        server_reply(to, "HTTP/1.1 200 OK", "", big, 100000);
    } else if (IS("huge")) {
        memset(big, ' ', sizeof big);
        server_reply(to, "HTTP/1.1 200 OK", "", big, sizeof big);
    } else if (IS("slow")) sleep(3);
    else if (IS("trickle")) {
        server_send(to, "HTTP/1.1 200 OK\r\n", 17);
        for (int i = 0; i < 30; i++) {
            server_send(to, "X-A: b\r\n", 8);
            usleep(100000);
        }
    } else if (IS("cut")) {
        const char *head = "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" SERVER_GOOD;
        server_send(to, head, strlen(head));
    } else if (IS("reset")) setsockopt(to, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    else if (IS("garbage")) server_send(to, "\x16\x03\x01 nonsense\r\n\r\n", 15);
    else if (IS("header")) {
        memset(big, 'h', 400000);
        server_send(to, "HTTP/1.1 200 OK\r\nX: ", 20);
        server_send(to, big, 400000);
    } else if (IS("redirect"))
        server_reply(to, "HTTP/1.1 302 Found", "Location: http://127.0.0.1:1/\r\n", SERVER_GOOD, strlen(SERVER_GOOD));
    else if (IS("401")) server_reply(to, "HTTP/1.1 401 Unauthorized", "", echo, strlen(echo));
    else if (IS("403")) server_reply(to, "HTTP/1.1 403 Forbidden", "", echo, strlen(echo));
    else if (IS("404")) server_reply(to, "HTTP/1.1 404 Not Found", "", "no such model", 13);
    else if (IS("400")) server_reply(to, "HTTP/1.1 400 Bad Request", "", echo, strlen(echo));
    else if (IS("204")) server_reply(to, "HTTP/1.1 204 No Content", "", "", 0);
    else if (IS("500")) server_reply(to, "HTTP/1.1 500 Oops", "", SERVER_GOOD, strlen(SERVER_GOOD));
    else if (IS("later")) server_reply(to, "HTTP/1.1 429 Slow", "Retry-After: 1000\r\n", "wait", 4);
    else if (IS("storm")) {
        if (tries < 2) server_reply(to, "HTTP/1.1 429 Slow", "Retry-After: 0\r\n", "wait", 4);
        else server_ok(to, SERVER_GOOD);
    } else if (IS("busy")) {
        if (tries < 1) server_reply(to, "HTTP/1.1 503 Busy", "", "", 0);
        else server_ok(to, SERVER_GOOD);
    } else if (IS("old")) {
        const char *text = "HTTP/1.0 200 OK\r\n\r\n" SERVER_GOOD;
        server_send(to, text, strlen(text));
    } else if (IS("chunks") || IS("badchunk")) {
        char text[400], size[20];
        snprintf(size, sizeof size, "%zx", strlen(SERVER_GOOD));
        snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n%s\r\n0\r\n\r\n",
                 IS("chunks") ? size : "zz", SERVER_GOOD);
        server_send(to, text, strlen(text));
    } else if (IS("gzip")) server_zipped(to, SERVER_GOOD, strlen(SERVER_GOOD), true);
    else if (IS("badgzip")) server_zipped(to, SERVER_GOOD, strlen(SERVER_GOOD), false);
    else if (IS("bomb")) {
        memset(big, ' ', sizeof big);
        server_zipped(to, big, sizeof big, true);
    } else if (IS("tokens"))
        server_tokens(
            to, "{\"token\":\"\\n\",\"logprob\":0,\"top_logprobs\":[{\"token\":\"\\n\",\"logprob\":0}]},",
            "{\"token\":\" 4\",\"logprob\":-0.7},{\"token\":\"x\",\"logprob\":-2},{\"token\":\"5\",\"logprob\":-1.5}");
    else if (IS("linetokens"))
        server_lines(to, SERVER_LINE("1", "yes", "-0.7", SERVER_OTHER) "," SERVER_LINE("2", "no", "-0.2", ""));
    else if (IS("linetokenone")) server_lines(to, SERVER_LINE("1", "yes", "-0.7", SERVER_OTHER));
    else if (IS("linetokentwice"))
        server_lines(to, SERVER_LINE("1", "yes", "-0.7", SERVER_OTHER) "," SERVER_LINE("1", "no", "-0.2", ""));
    else if (IS("linetokenbare"))
        server_lines(to, SERVER_LINE("x", "yes", "-0.7", "") "," SERVER_LINE("2", "no", "-0.2", ""));
    else if (IS("notop")) server_tokens(to, "", "");
    else if (IS("positive")) server_tokens(to, "", "{\"token\":\"4\",\"logprob\":3}");
    else if (IS("strings")) server_tokens(to, "", "{\"token\":\"4\",\"logprob\":\"-1\"}");
    else if (IS("other")) server_tokens(to, "", "{\"token\":\"x\",\"logprob\":-1}");
    else if (IS("again"))
        server_tokens(to, "", "{\"token\":\"4\",\"logprob\":-0.1},{\"token\":\"4\",\"logprob\":-0.1}");
#undef IS
}

/* Reads a request to its end and answers it. */
static inline void server_request(JudgeServer *s, int to) {
    static char request[1 << 16];
    size_t n = 0, need = SIZE_MAX;
    while (n < sizeof request - 1 && n < need) {
        const ssize_t got = recv(to, request + n, sizeof request - 1 - n, 0);
        if (got <= 0) return;
        n += (size_t)got;
        request[n] = 0;
        const char *end = strstr(request, "\r\n\r\n"), *length = strstr(request, "Content-Length: ");
        if (end && length) need = (size_t)(end + 4 - request) + strtoul(length + 16, NULL, 10);
    }
    char name[32] = "";
    sscanf(request, "POST /%31[a-z0-9]/chat/completions ", name);
    const int tries = __sync_fetch_and_add((int *)(uintptr_t)&s->shared->requests, 1);
    if (strstr(request, "Authorization: Bearer ")) s->shared->authorized++;
    server_answer(to, name, request, tries);
}

static inline JudgeServer judge_server_start(void) {
    JudgeServer s = {0};
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    s.shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(!bind(listener, (struct sockaddr *)&at, size) && !listen(listener, 64));
    getsockname(listener, (struct sockaddr *)&at, &size);
    s.port = ntohs(at.sin_port);
    s.pid = fork();
    if (s.pid) {
        close(listener);
        return s;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* it does not outlive a test that crashes */
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        const int to = accept(listener, NULL, NULL);
        if (to < 0) continue;
        if (fork()) {
            close(to);
            continue;
        }
        alarm(10); /* no child outlives the test */
        server_request(&s, to);
        close(to);
        _exit(0);
    }
}

static inline void judge_server_stop(JudgeServer *s) {
    if (!s->pid) return; /* never started: kill(0) would end the group of the test */
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    munmap(s->shared, 4096);
}

#endif
