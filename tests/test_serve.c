/* test_serve.c - the server of `generate --serve`: its answers against an uncached forward pass, streams against whole
 * answers, bad and hostile requests, many clients, limits.
 *
 * The server runs in this process, on a thread of its own; clients are plain sockets. */
#if __has_include(<microhttpd.h>)
#include "../llmc/base/clock.h"           /* clock_seconds */
#include "../llmc/base/error.h"           /* Error, xstrdup */
#include "../llmc/base/text.h"            /* text_string, TextBuffer, text_clear, text_free, ... */
#include "../llmc/model/model.h"          /* Model, model_free */
#include "../llmc/model/model_load.h"     /* ModelFile, model_file_free */
#include "../llmc/model/model_text.h"     /* ModelText, model_text_close, model_text_open */
#include "../llmc/rollout/rollout.h"      /* Completion, completion_free, sampling_add_stops, sampling_default */
#include "../llmc/rollout/trajectory.h"   /* Trajectory, trajectory_branch_end */
#include "../llmc/serve/engine.h"         /* serve_engine_close, serve_engine_open, ServeEngine, ... */
#include "../llmc/serve/gateway.h"        /* ServeTrajectory, serve_trajectory_open, ServeGateway, ServeBranch, ... */
#include "../llmc/serve/http.h"           /* ServeHttp, serve_http_close, serve_http_expire, serve_http_open */
#include "../llmc/serve/request.h"        /* ServeModel, SERVE_COMPLETION, ServeRequest */
#include "../llmc/text/tokenizer.h"       /* TOKENIZER_CONTINUES, tokenizer_encode, tokenizer_free, ... */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open */
#include "../llmc/tools/tool_format.h"    /* tool_format_free, tool_format_of, tool_format_open */
#include "models.h"                       /* json_text_of, json_number_of, MODELS_IM_END, MODELS_VOCAB, ... */
#include "shell.h"                        /* assert_holds */
#include <stdatomic.h>

enum { CONTEXT = 192, SLOTS = 4 };

/* ---- the server ------------------------------------------------------------------------------------------------ */

static Model chance;
static struct {
    Model *model;
    ModelText text;
    ServeModel serve;
    ServeEngine engine, other;
    ServeModel second;
    ServeHttp http;
    pthread_t thread;
    atomic_bool stop;
    Error e;
    bool ok;
    int port;
} server;

static bool stopping(void *context) {
    (void)context;
    return server.stop;
}

static void *serving(void *context) {
    (void)context;
    omp_set_num_threads(1);
    server.ok = serve_engine_run(&server.engine, stopping, serve_http_expire, &server.http, &server.e);
    return NULL;
}

/* Settings of the next start(). */
static struct {
    int slots, queue;
    const char *key;
    double patience;
    bool no_prefixes;
    Model *second; /* served as "second" */
    ServeGateway *gateway;
    int32_t most; /* tokens of its trajectories */
} settings = {.slots = SLOTS, .queue = 100};

static const char tools_template[] =
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

static void start(Model *m, const char *template) {
    Error e;
    ModelFile f = {.lineage = json_array()};
    if (!tokenizer_store(&models_bytes, &f.tokenizer, &f.tokenizer_bytes, &e)) fail_msg("%s", e.text);
    if (template) f.chat_template = xstrdup(template);
    server.model = m;
    server.stop = false;
    if (!model_text_open(&server.text, &f, "test", &e)) fail_msg("%s", e.text);
    model_file_free(&f);
    server.serve = (ServeModel){.name = "tiny",
                                .text = &server.text,
                                .vocab = m->config.vocab,
                                .length = m->config.context,
                                .standard = sampling_default()};
    server.serve.standard.max_new = 20;
    if (!sampling_add_stops(&server.serve.standard, &server.text.ends, &e)) fail_msg("%s", e.text);
    server.serve.has_format = tool_format_of(&server.text.chat) && tool_format_open(&server.serve.format, "hermes", &e);
    if (!serve_engine_open(&server.engine, &server.serve, m, settings.slots, settings.queue, 42, &e))
        fail_msg("%s", e.text);
    server.http = (ServeHttp){.engine = &server.engine, .key = settings.key, .patience = settings.patience};
    server.second = server.serve;
    server.second.name = "second";
    if (settings.second) {
        if (!serve_engine_open(&server.other, &server.second, settings.second, settings.slots, settings.queue, 42, &e))
            fail_msg("%s", e.text);
        server.engine.other = &server.other;
        server.serve.other = server.second.name;
    }
    server.engine.no_prefixes = settings.no_prefixes;
    server.serve.gateway = settings.gateway != NULL;
    server.http.gateway = settings.gateway;
    if (settings.gateway) serve_gateway_open(settings.gateway, &server.engine, 2, settings.most);
    if (!serve_http_open(&server.http, "127.0.0.1:0", &e)) fail_msg("%s", e.text);
    server.port = atoi(strrchr(server.http.address, ':') + 1);
    assert_int_equal(pthread_create(&server.thread, NULL, serving, NULL), 0);
}

static void stop(void) {
    server.stop = true;
    pthread_join(server.thread, NULL);
    if (!server.ok) fail_msg("%s", server.e.text);
    serve_http_close(&server.http);
    if (server.engine.other) serve_engine_close(&server.other);
    serve_engine_close(&server.engine);
    tool_format_free(&server.serve.format);
    model_text_close(&server.text);
}

/* ---- a client -------------------------------------------------------------------------------------------------- */

static int dial(void) {
    const struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)server.port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct timeval patience = {.tv_sec = 60};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (s < 0 || connect(s, (const struct sockaddr *)&a, sizeof a)) fail_msg("cannot connect: %s", strerror(errno));
    return s;
}

static void say(int s, const char *text, size_t n) {
    while (n) {
        const ssize_t k = send(s, text, n, MSG_NOSIGNAL);
        if (k <= 0) return; /* the server has closed */
        text += k;
        n -= (size_t)k;
    }
}

/* Everything until the server closes; the caller frees it. */
static char *hear(int s) {
    TextBuffer all = {0};
    char piece[4096];
    text_clear(&all);
    for (ssize_t n; (n = recv(s, piece, sizeof piece, 0)) > 0;) text_append(&all, piece, (size_t)n);
    close(s);
    return all.text;
}

/* The body of an answer, without the marks of chunks; the caller frees it. */
static char *body_of(const char *answer, int *status) {
    TextBuffer body = {0};
    text_clear(&body);
    *status = sscanf(answer, "HTTP/1.1 %d", status) == 1 ? *status : 0;
    const char *at = strstr(answer, "\r\n\r\n");
    const bool chunked =
        at && strcasestr(answer, "transfer-encoding: chunked") && strcasestr(answer, "transfer-encoding: chunked") < at;
    if (at) at += 4;
    if (at && !chunked) text_string(&body, at);
    while (at && chunked) {
        char *end;
        const size_t n = strtoul(at, &end, 16);
        if (!n || strlen(end) < n + 2) break;
        text_append(&body, end + 2, n);
        at = end + 2 + n + 2;
    }
    return body.text;
}

/* Sends a request and returns the body of the answer. head: more headers, each with its \r\n. */
static char *ask_with(const char *method, const char *path, const char *head, const char *body, int *status) {
    TextBuffer request = {0};
    text_format(&request, "%s %s HTTP/1.1\r\nConnection: close\r\nContent-Length: %zu\r\n", method, path, strlen(body));
    text_string(&request, head);
    text_string(&request, "\r\n");
    text_string(&request, body);
    const int s = dial();
    say(s, request.text, request.length);
    char *answer = hear(s), *text = body_of(answer, status);
    free(answer), text_free(&request);
    return text;
}

#define HEAD "Host: localhost\r\nContent-Type: application/json\r\n"

static char *ask(const char *path, const char *body, int *status) { return ask_with("POST", path, HEAD, body, status); }

/* Asks, expects a status and returns the answer, to be freed with json_decref(). */
static json_t *answer_of(const char *path, const char *body, int expected) {
    int status;
    char *text = ask(path, body, &status);
    json_t *answer = json_loads(text, JSON_ALLOW_NUL, NULL);
    if (status != expected || !answer)
        fail_msg("%s %s: status %d, expected %d: %s", path, body, status, expected, text);
    free(text);
    return answer;
}

static json_t *completion(const char *body) { return answer_of("/v1/completions", body, 200); }
static json_t *chat(const char *body) { return answer_of("/v1/chat/completions", body, 200); }
static const json_t *choice(const json_t *answer, size_t i) {
    return json_array_get(json_object_get(answer, "choices"), i);
}

/* ---- greedy text and log-probabilities ------------------------------------------------------------------------- */

/* Appends the greedy continuation by uncached forward passes. */
static int uncached(int32_t *ids, int n, int most) {
    const int first = n;
    while (n - first < most && n < CONTEXT) {
        float *z = models_logits(&chance, ids, n);
        const int token = models_argmax(z + (size_t)(n - 1) * MODELS_VOCAB);
        free(z);
        if (token == MODELS_EOS) break;
        ids[n++] = token;
    }
    return n - first;
}

static void greedy_text_is_that_of_the_model(void **state) {
    (void)state;
    static const char *const prompts[] = {"2+3=", "a", "What is the capital of France?"};
    start(&chance, NULL);
    for (int i = 0; i < 3; i++) {
        int32_t ids[CONTEXT];
        char body[300], want[64];
        const int n = (int)strlen(prompts[i]);
        for (int k = 0; k < n; k++) ids[k] = (unsigned char)prompts[i][k];
        const int got = uncached(ids, n, 30);
        for (int k = 0; k < got; k++) want[k] = (char)ids[n + k];
        want[got] = 0;
        snprintf(body, sizeof body, "{\"prompt\":\"%s\",\"temperature\":0,\"max_tokens\":30,\"model\":\"tiny\"}",
                 prompts[i]);
        json_t *a = completion(body);
        assert_string_equal(json_text_of(choice(a, 0), "text"), want);
        assert_string_equal(json_text_of(choice(a, 0), "finish_reason"), got < 30 ? "stop" : "length");
        assert_true(json_is_null(json_object_get(choice(a, 0), "stop_reason")));
        assert_true(json_is_null(json_object_get(choice(a, 0), "logprobs")));
        assert_int_equal(json_number_of(json_object_get(a, "usage"), "prompt_tokens"), n);
        assert_int_equal(json_number_of(json_object_get(a, "usage"), "completion_tokens"), got + (got < 30));
        json_decref(a);
    }
    /* lists of texts and of ids; ids that come back */
    json_t *a = completion("{\"prompt\":[\"2+3=\",\"a\"],\"temperature\":0,\"max_tokens\":5}");
    json_t *b =
        completion("{\"prompt\":[[50,43,51,61],[97]],\"temperature\":0,\"max_tokens\":5,\"return_token_ids\":true}");
    for (size_t i = 0; i < 2; i++) {
        assert_string_equal(json_text_of(choice(a, i), "text"), json_text_of(choice(b, i), "text"));
        assert_int_equal(json_number_of(choice(b, i), "index"), i);
        assert_int_equal(json_array_size(json_object_get(choice(b, i), "prompt_token_ids")), i ? 1 : 4);
        assert_int_equal(json_array_size(json_object_get(choice(b, i), "token_ids")), 5);
    }
    assert_null(json_object_get(choice(a, 0), "token_ids"));
    json_decref(a), json_decref(b);
    stop();
}

static double at(const json_t *list, size_t i) { return json_number_value(json_array_get(list, i)); }

/* Log-probabilities of a prompt, of greedy and of sampled tokens equal log softmax(logits / temperature) in double. */
static void log_probabilities_are_those_of_a_forward_pass(void **state) {
    (void)state;
    static const char prompt[] = "The quick brown fox";
    const int n = (int)strlen(prompt);
    start(&chance, NULL);
    for (int run = 0; run < 4; run++) { /* echo alone; with one greedy token; with sampled ones; without the prompt */
        static const char *const how[] = {"\"max_tokens\":0,\"echo\":true",
                                          "\"max_tokens\":1,\"echo\":true,\"temperature\":0",
                                          "\"max_tokens\":8,\"echo\":true,\"temperature\":0.7,\"seed\":3",
                                          "\"max_tokens\":8,\"temperature\":2,\"top_p\":0.9,\"seed\":4"};
        const double temperature = run == 2 ? 0.7 : run == 3 ? 2 : 1;
        char body[300];
        snprintf(body, sizeof body, "{\"prompt\":\"%s\",\"logprobs\":3,\"return_token_ids\":true,%s}", prompt,
                 how[run]);
        json_t *a = completion(body);
        const json_t *ids = json_object_get(choice(a, 0), "token_ids"),
                     *lists = json_object_get(choice(a, 0), "logprobs");
        const json_t *logps = json_object_get(lists, "token_logprobs"), *tops = json_object_get(lists, "top_logprobs");
        const json_t *offsets = json_object_get(lists, "text_offset"), *names = json_object_get(lists, "tokens");
        const int drawn = (int)json_array_size(ids), skip = run == 3 ? n : 0;
        int32_t all[CONTEXT];
        for (int i = 0; i < n; i++) all[i] = (unsigned char)prompt[i];
        for (int i = 0; i < drawn; i++) all[n + i] = (int32_t)at(ids, (size_t)i);
        assert_int_equal(json_array_size(logps), n + drawn - skip);
        float *z = models_logits(&chance, all, n + drawn);
        if (run == 1) assert_int_equal(all[n], models_argmax(z + (n - 1) * MODELS_VOCAB));
        for (int i = skip, offset = 0; i < n + drawn; i++) {
            const size_t k = (size_t)(i - skip);
            assert_int_equal(at(offsets, k), offset);
            offset += all[i] > 255 ? (int)strlen(json_string_value(json_array_get(names, k))) : (all[i] & 0xC0) != 0x80;
            if (all[i] < 128) assert_int_equal(json_string_value(json_array_get(names, k))[0], all[i]);
            if (!i) {
                assert_true(json_is_null(json_array_get(logps, 0)) && json_is_null(json_array_get(tops, 0)));
                continue;
            }
            const float *row = z + (size_t)(i - 1) * MODELS_VOCAB;
            const double t = i < n ? 1 : temperature;
            assert_near(at(logps, k), -models_nats(row, t, all[i]), 1e-4);
            const json_t *best = json_array_get(tops, k);
            json_t *value;
            const char *key;
            double most = -1e9;
            assert_true(json_object_size(best) == 3 || json_object_size(best) == 4);
            json_object_foreach((json_t *)best, key, value) most = fmax(most, json_number_value(value));
            assert_near(most, -models_nats(row, t, models_argmax(row)), 1e-4);
            /* a greedy token has exactly the number of the most likely one, by which lm-eval knows it */
            if (models_argmax(row) == all[i]) assert_true(at(logps, k) == most);
        }
        if (run < 3) assert_memory_equal(json_text_of(choice(a, 0), "text"), prompt, (size_t)n);
        free(z), json_decref(a);
    }
    stop();
}

static void samples_depend_on_their_seed_alone(void **state) {
    (void)state;
    static const char body[] = "{\"prompt\":\"abc\",\"max_tokens\":20,\"n\":3,\"seed\":7,\"temperature\":1.5}";
    start(&chance, NULL);
    json_t *a = completion(body), *b = completion("{\"prompt\":\"abc\",\"max_tokens\":20,\"n\":6}"),
           *c = completion(body);
    assert_true(json_equal(json_object_get(a, "choices"), json_object_get(c, "choices")));
    assert_string_not_equal(json_text_of(choice(a, 0), "text"), json_text_of(choice(a, 1), "text"));
    assert_string_not_equal(json_text_of(choice(b, 0), "text"), json_text_of(choice(b, 5), "text"));
    json_decref(b);
    b = completion("{\"prompt\":\"abc\",\"max_tokens\":20,\"n\":3,\"seed\":8,\"temperature\":1.5}");
    assert_string_not_equal(json_text_of(choice(a, 0), "text"), json_text_of(choice(b, 0), "text"));
    json_decref(a), json_decref(b), json_decref(c);
    /* top_k 1 is greedy at any temperature */
    a = completion("{\"prompt\":\"abc\",\"max_tokens\":20,\"top_k\":1,\"temperature\":3}");
    b = completion("{\"prompt\":\"abc\",\"max_tokens\":20,\"temperature\":0}");
    assert_string_equal(json_text_of(choice(a, 0), "text"), json_text_of(choice(b, 0), "text"));
    json_decref(a), json_decref(b);
    stop();
}

/* ---- streams --------------------------------------------------------------------------------------------------- */

/* What the events of a stream join to. */
typedef struct Joined {
    TextBuffer text;
    json_t *ids, *logps, *calls, *stop_reason;
    char finish[20];
    int events, role, usage;
    bool done;
} Joined;

static Joined join(const char *path, const char *body, int index) {
    Joined j = {.ids = json_array(), .logps = json_array()};
    int status;
    char *text = ask(path, body, &status);
    assert_int_equal(status, 200);
    text_clear(&j.text);
    for (char *line = text, *end; *line; line = end + 2) {
        end = strstr(line, "\n\n");
        assert_non_null(end);
        *end = 0;
        assert_memory_equal(line, "data: ", 6);
        assert_false(j.done);
        j.done = !strcmp(line + 6, "[DONE]");
        if (j.done) continue;
        json_t *event = json_loads(line + 6, JSON_ALLOW_NUL, NULL);
        assert_non_null(event);
        j.events++;
        j.usage += json_object_get(event, "usage") != NULL;
        const json_t *c = choice(event, 0), *delta = json_object_get(c, "delta");
        if (!c || json_integer_value(json_object_get(c, "index")) != index) {
            json_decref(event);
            continue;
        }
        const char *piece = json_string_value(json_object_get(delta ? delta : c, delta ? "content" : "text"));
        if (piece) text_string(&j.text, piece);
        j.role += json_object_get(delta, "role") != NULL;
        json_t *ids = json_object_get(c, "token_ids"), *logprobs = json_object_get(c, "logprobs");
        json_array_extend(j.ids, ids ? ids : j.calls);
        json_t *list = json_object_get(logprobs, delta ? "content" : "token_logprobs");
        if (list) json_array_extend(j.logps, list);
        if (json_object_get(delta, "tool_calls")) j.calls = json_incref(json_object_get(delta, "tool_calls"));
        const char *finish = json_string_value(json_object_get(c, "finish_reason"));
        if (finish) snprintf(j.finish, sizeof j.finish, "%s", finish);
        json_t *reason = json_object_get(c, "stop_reason");
        assert_non_null(reason);
        assert_true(finish || json_is_null(reason));
        if (finish) j.stop_reason = json_incref(reason);
        json_decref(event);
    }
    assert_true(j.done);
    free(text);
    return j;
}

static void joined_free(Joined *j) {
    text_free(&j->text);
    json_decref(j->ids), json_decref(j->logps), json_decref(j->calls), json_decref(j->stop_reason);
}

static void pieces_join_to_the_whole(void **state) {
    (void)state;
    static const char *const bodies[] = {
        "\"prompt\":\"abc\",\"max_tokens\":25,\"n\":3,\"seed\":1,\"return_token_ids\":true,\"logprobs\":2",
        "\"prompt\":\"abc\",\"max_tokens\":40,\"seed\":2,\"stop\":[\"e\",\"qq\"],\"return_token_ids\":true,\"logprobs\":0",
        "\"prompt\":\"abc\",\"max_tokens\":4,\"seed\":2,\"echo\":true,\"logprobs\":1,\"return_token_ids\":true",
        /* bytes that are no text */
        "\"prompt\":[200,201,255],\"max_tokens\":30,\"temperature\":50,\"seed\":2,\"logprobs\":1,\"return_token_ids\":true"};
    start(&chance, NULL);
    for (int i = 0; i < 4; i++) {
        char whole[400], stream[400];
        snprintf(whole, sizeof whole, "{%s}", bodies[i]);
        snprintf(stream, sizeof stream, "{%s,\"stream\":true,\"stream_options\":{\"include_usage\":true}}", bodies[i]);
        json_t *a = completion(whole);
        for (int k = 0; k < (i ? 1 : 3); k++) {
            Joined j = join("/v1/completions", stream, k);
            const json_t *c = choice(a, (size_t)k), *logprobs = json_object_get(c, "logprobs");
            assert_string_equal(j.text.text, json_text_of(c, "text"));
            assert_string_equal(j.finish, json_text_of(c, "finish_reason"));
            assert_true(json_equal(j.stop_reason, json_object_get(c, "stop_reason")));
            assert_true(json_equal(j.ids, json_object_get(c, "token_ids")));
            assert_true(json_equal(j.logps, json_object_get(logprobs, "token_logprobs")));
            assert_int_equal(j.usage, 1);
            assert_true(j.events > 2);
            joined_free(&j);
        }
        json_decref(a);
    }
    stop();
}

/* A stop text ends the text before it, and so do both texts of a request; the answer names the one that was met. */
static void stop_texts_end_the_text(void **state) {
    (void)state;
    start(&chance, NULL);
    json_t *a = completion("{\"prompt\":\"abc\",\"max_tokens\":40,\"seed\":5,\"temperature\":0.7}");
    char *text = xstrdup(json_text_of(choice(a, 0), "text")), body[400], word[3] = {0};
    size_t i = 1;
    while (text[i] && !(isalnum((unsigned char)text[i]) && isalnum((unsigned char)text[i + 1]))) i++;
    assert_true(text[i]);
    memcpy(word, text + i, 2);
    snprintf(body, sizeof body,
             "{\"prompt\":\"abc\",\"max_tokens\":40,\"seed\":5,\"temperature\":0.7,\"stop\":[\"never\",\"%s\"]}", word);
    json_t *b = completion(body);
    *strstr(text, word) = 0;
    assert_string_equal(json_text_of(choice(b, 0), "text"), text);
    assert_string_equal(json_text_of(choice(b, 0), "finish_reason"), "stop");
    assert_string_equal(json_text_of(choice(b, 0), "stop_reason"), word);
    free(text), json_decref(a), json_decref(b);
    stop();
}

/* ---- chats ----------------------------------------------------------------------------------------------------- */

static void chats_use_the_template(void **state) {
    (void)state;
    start(&chance, "chatml");
    json_t *a = completion(
        "{\"prompt\":\"<|im_start|>system\\nS<|im_end|>\\n<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n\","
        "\"temperature\":0,\"max_tokens\":12,\"return_token_ids\":true}");
    json_t *b = chat(
        "{\"messages\":[{\"role\":\"developer\",\"content\":\"S\"},{\"role\":\"user\",\"content\":[{\"type\":\"text\","
        "\"text\":\"H\"},{\"type\":\"text\",\"text\":\"i\"}]}],\"temperature\":0,\"max_completion_tokens\":12,"
        "\"return_token_ids\":true,\"logprobs\":true,\"top_logprobs\":2}");
    const json_t *message = json_object_get(choice(b, 0), "message");
    assert_string_equal(json_text_of(message, "content"), json_text_of(choice(a, 0), "text"));
    assert_string_equal(json_text_of(message, "role"), "assistant");
    assert_true(json_equal(json_object_get(b, "prompt_token_ids"), json_object_get(choice(a, 0), "prompt_token_ids")));
    assert_true(json_equal(json_object_get(choice(b, 0), "token_ids"), json_object_get(choice(a, 0), "token_ids")));
    const json_t *content = json_object_get(json_object_get(choice(b, 0), "logprobs"), "content");
    assert_int_equal(json_array_size(content), 12);
    const json_t *entry = json_array_get(content, 0), *top = json_array_get(json_object_get(entry, "top_logprobs"), 0);
    assert_true(json_number_of(entry, "logprob") == json_number_of(top, "logprob"));
    assert_int_equal(at(json_object_get(entry, "bytes"), 0), (unsigned char)json_text_of(entry, "token")[0]);
    /* a message cannot write a special token; calls and results are text */
    json_t *c = chat(
        "{\"messages\":[{\"role\":\"user\",\"content\":\"<|im_end|>\"},{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"1\","
        "\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},{\"role\":\"tool\","
        "\"tool_call_id\":\"1\",\"content\":\"7\"}],\"max_tokens\":1,\"return_token_ids\":true}");
    int ends = 0;
    size_t i;
    json_t *id;
    json_array_foreach(json_object_get(c, "prompt_token_ids"), i, id) ends += json_integer_value(id) == MODELS_IM_END;
    assert_int_equal(ends, 3);
    json_decref(a), json_decref(b), json_decref(c);
    stop();
}

#define TOOLS "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"add\",\"parameters\":{}}}]"
#define ADD   "{\"messages\":[{\"role\":\"user\",\"content\":\"1+2\"}],\"temperature\":0,\"max_tokens\":80," TOOLS

/* A model that writes a call, a text that is none, or half a call, whatever it is asked. */
static void calls_are_read(void **state) {
    (void)state;
    static const char *const texts[] = {"Hm<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>",
                                        "a <tool is no call", "x<tool_call>{\"name\": }</tool_call>"};
    for (int t = 0; t < 3; t++) {
        int32_t script[CONTEXT] = {0};
        start(&chance, tools_template);
        json_t *a = chat(ADD ",\"n\":1}");
        const int n = (int)json_number_of(json_object_get(a, "usage"), "prompt_tokens");
        json_decref(a);
        stop();
        const int length = (int)strlen(texts[t]);
        assert_true(n + length < CONTEXT);
        for (int i = 0; i < length; i++) script[n - 1 + i] = (unsigned char)texts[t][i];
        script[n - 1 + length] = MODELS_IM_END;
        Model m = models_scripted(CONTEXT, script, NULL, n + length);
        start(&m, tools_template);
        a = chat(ADD ",\"tool_choice\":\"auto\"}");
        Joined j = join("/v1/chat/completions", ADD ",\"stream\":true}", 0);
        const json_t *message = json_object_get(choice(a, 0), "message");
        const json_t *call = json_array_get(json_object_get(message, "tool_calls"), 0),
                     *function = json_object_get(call, "function");
        assert_string_equal(json_text_of(message, "content"), t ? texts[t] : "Hm");
        assert_string_equal(json_text_of(choice(a, 0), "finish_reason"), t ? "stop" : "tool_calls");
        assert_string_equal(j.text.text, t ? texts[t] : "Hm");
        assert_string_equal(j.finish, t ? "stop" : "tool_calls");
        assert_int_equal(j.role, 1);
        assert_true((call != NULL) == !t && (j.calls != NULL) == !t);
        if (call) {
            assert_string_equal(json_text_of(function, "name"), "add");
            assert_string_equal(json_text_of(function, "arguments"), "{\"a\":1}");
            assert_true(json_equal(function, json_object_get(json_array_get(j.calls, 0), "function")));
        }
        json_decref(a), joined_free(&j);
        if (!t) { /* tools that are not shown are not called; here the model, which sees positions alone, writes other text */
            a = chat(ADD ",\"tool_choice\":\"none\"}");
            assert_null(json_object_get(json_object_get(choice(a, 0), "message"), "tool_calls"));
            json_decref(a);
        }
        stop();
        model_free(&m);
    }
}

/* A model's own template is given the ids of calls, which some templates write, and other fields of messages. */
static void templates_get_what_messages_say(void **state) {
    (void)state;
    start(&chance,
          "{% for m in messages %}{{ m.name }}{{ m.reasoning_content }}{% for c in m.tool_calls or [] %}{{ c.id }}"
          "{% endfor %}{{ m.tool_call_id }}{{ m.content }}|{% endfor %}");
    json_t *a = chat(
        "{\"messages\":[{\"role\":\"user\",\"name\":\"Ann \",\"content\":\"Hi\"},{\"role\":\"assistant\","
        "\"reasoning_content\":\"hm \",\"tool_calls\":[{\"id\":\"call_7\",\"type\":\"function\",\"function\":"
        "{\"name\":\"f\",\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"call_7 \",\"content\":\"9\"}],"
        "\"max_tokens\":1,\"return_token_ids\":true}");
    char text[CONTEXT] = {0};
    size_t i;
    json_t *id;
    json_array_foreach(json_object_get(a, "prompt_token_ids"), i, id) text[i] = (char)json_integer_value(id);
    assert_string_equal(text, "Ann Hi|hm call_7|call_7 9|");
    json_decref(a);
    stop();
}

/* ---- bad requests ---------------------------------------------------------------------------------------------- */

static void bad_requests_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *path, *body, *part;
        int status;
        const char *code; /* NULL: null */
    } bad[] = {
        {"/v1/completions", "", "is not JSON", 400, NULL},
        {"/v1/completions", "[1]", "expected an object", 400, NULL},
        {"/v1/completions", "{\"prompt\":\"a\",\"prompt\":\"b\"}", "is not JSON", 400, NULL},
        {"/v1/completions", "{}", "prompt is required", 400, "missing_required_parameter"},
        {"/v1/completions", "{\"prompt\":\"a\",\"frobnicate\":1}", "'frobnicate' is not supported", 400,
         "unknown_parameter"},
        {"/v1/completions", "{\"prompt\":\"a\",\"presence_penalty\":0.5}",
         "'presence_penalty' is not supported with this", 400, "unsupported_value"},
        {"/v1/completions", "{\"prompt\":\"a\",\"messages\":[]}", "'messages' is not supported", 400,
         "unknown_parameter"},
        {"/v1/completions", "{\"prompt\":\"a\",\"model\":\"gpt-9\"}", "does not exist", 404, "model_not_found"},
        {"/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":0}", "only with echo", 400, NULL},
        {"/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":192}", "maximum context length is 192 tokens", 400,
         "context_length_exceeded"},
        {"/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":1.5}", "is a number, expected an integer", 400,
         "invalid_type"},
        {"/v1/completions", "{\"prompt\":\"a\",\"temperature\":-1}", "temperature is -1", 400,
         "decimal_below_min_value"},
        {"/v1/completions", "{\"prompt\":\"a\",\"temperature\":0.001}", "neither 0 (greedy)", 400, NULL},
        {"/v1/completions", "{\"prompt\":\"a\",\"top_p\":\"x\"}", "is a text, expected a number", 400, "invalid_type"},
        {"/v1/completions", "{\"prompt\":\"a\",\"n\":0}", "expected 1 to 1024", 400, "integer_below_min_value"},
        {"/v1/completions", "{\"prompt\":[\"a\",\"b\"],\"n\":1024}", "more than 1024 completions", 400, NULL},
        {"/v1/completions", "{\"prompt\":\"a\",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\"]}", "at most 4", 400,
         "array_above_max_length"},
        {"/v1/completions", "{\"prompt\":\"a\",\"stop\":\"\"}", "is empty", 400, NULL},
        {"/v1/completions", "{\"prompt\":\"a\",\"logprobs\":6}", "expected 0 to 5", 400, "integer_above_max_value"},
        {"/v1/completions", "{\"prompt\":\"a\",\"stream_options\":{}}", "only with stream", 400, NULL},
        {"/v1/completions", "{\"prompt\":[1,\"a\"]}", "a text at place 1", 400, NULL},
        {"/v1/completions", "{\"prompt\":[1,260]}", "outside the vocabulary of 260", 400, NULL},
        {"/v1/completions", "{\"prompt\":[[]]}", "is empty", 400, NULL},
        {"/v1/completions", "{\"prompt\":[]}", "empty list", 400, "empty_array"},
        {"/v1/completions", "{\"prompt\":7}", "expected a text or a list", 400, "invalid_type"},
        {"/v1/chat/completions",
         "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"n\":1024,\"max_tokens\":150,\"logprobs\":true,"
         "\"top_logprobs\":20}",
         "up to 3225600 log-probabilities", 400, NULL},
        {"/v1/chat/completions", "{\"messages\":[]}", "at least one message", 400, "empty_array"},
#define A40 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"" A40 A40 A40 A40 A40 "\"}]}",
         "maximum context length is 192 tokens", 400, "context_length_exceeded"},
        {"/v1/chat/completions", "{\"messages\":[{\"role\":\"king\",\"content\":\"a\"}]}", "has no role", 400, NULL},
        {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\"}]}", "has no content", 400, NULL},
        {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
         "is not {\"type\"", 400, NULL},
        {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"audio\":1}]}",
         "'audio' of message 0", 400, NULL},
        {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"name\":\"b\"}]}",
         "'name' of message 0 has no place", 400, NULL},
        {"/v1/chat/completions",
         "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"reasoning_content\":\"b\"}]}",
         "'reasoning_content' of message 0 has no place", 400, NULL},
        {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"refusal\":\"b\"}]}",
         "'refusal' of message 0 is not supported", 400, NULL},
        {"/v1/chat/completions",
         "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"max_tokens\":2,\"max_completion_tokens\":3}",
         "give only one of them", 400, NULL},
        {"/v1/chat/completions", ADD ",\"tool_choice\":\"required\"}", "auto or none", 400, NULL},
        {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]," TOOLS "}",
         "cannot show tools", 400, NULL},
        {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"top_logprobs\":1}",
         "only with logprobs", 400, NULL},
        {"/v1/embeddings", "{}", "no /v1/embeddings here", 404, NULL},
        {"/v1/models", "{}", "is no method of", 405, NULL},
    };
    start(&chance, NULL);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *a = answer_of(bad[i].path, bad[i].body, bad[i].status);
        const json_t *error = json_object_get(a, "error");
        assert_holds(json_text_of(error, "message"), bad[i].part);
        assert_string_equal(json_text_of(error, "type"), "invalid_request_error");
        assert_non_null(json_object_get(error, "param"));
        if (bad[i].code) assert_string_equal(json_text_of(error, "code"), bad[i].code);
        else assert_true(json_is_null(json_object_get(error, "code")));
        json_decref(a);
    }
    /* fields that are null or change nothing */
    json_decref(completion(
        "{\"prompt\":\"a\",\"frobnicate\":null,\"logit_bias\":{},\"presence_penalty\":0.0,\"suffix\":null,\"user\":\"u\"}"));
    /* what no page of another site can send */
    int status;
    char *text = ask_with("POST", "/v1/completions", "Host: localhost\r\nContent-Type: text/plain\r\n", "{}", &status);
    assert_int_equal(status, 415);
    free(text);
    text =
        ask_with("POST", "/v1/completions", "Host: evil.example\r\nContent-Type: application/json\r\n", "{}", &status);
    assert_int_equal(status, 403);
    free(text);
    text = ask_with("GET", "/v1/models", "Host: localhost.evil.example\r\n", "", &status);
    assert_int_equal(status, 403);
    free(text);
    /* a body that is too long is not waited for */
    const int s = dial();
    static const char large[] = "POST /v1/completions HTTP/1.1\r\n" HEAD "Content-Length: 8388609\r\n\r\n";
    say(s, large, strlen(large));
    char *answer = hear(s);
    text = body_of(answer, &status);
    assert_int_equal(status, 413);
    free(answer), free(text);
    /* the methods of a path */
    static const char *const methods[][2] = {{"POST /v1/models", "\r\nAllow: GET, HEAD\r\n"},
                                             {"GET /v1/completions", "\r\nAllow: POST\r\n"}};
    for (int i = 0; i < 2; i++) {
        char request[200];
        snprintf(request, sizeof request, "%s HTTP/1.1\r\nConnection: close\r\n" HEAD "Content-Length: 0\r\n\r\n",
                 methods[i][0]);
        const int c = dial();
        say(c, request, strlen(request));
        answer = hear(c);
        assert_holds(answer, methods[i][1]);
        free(answer);
    }
    text = ask_with("GET", "/v1/models", HEAD, "", &status);
    assert_int_equal(status, 200);
    assert_holds(text, "\"id\":\"tiny\"");
    free(text);
    text = ask_with("GET", "/", HEAD, "", &status);
    assert_int_equal(status, 200);
    assert_holds(text, "<script src=\"/chat.js\"");
    free(text);
    stop();
}

static uint32_t noise(void) {
    static uint32_t x = 12345;
    x = x * 1664525 + 1013904223;
    return x >> 8;
}

/* A thousand bodies with changed bytes: each gets a well-formed answer. Two hundred requests of noise: the server lives. */
static void malformed_requests_are_survived(void **state) {
    (void)state;
    static const char *const good[] = {
        "{\"prompt\":[\"abc\",[1,2]],\"max_tokens\":2,\"logprobs\":1,\"echo\":true,\"stop\":[\"x\"],\"seed\":1}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"h\\u00e9\"},{\"role\":\"tool\",\"content\":[]}],\"max_tokens\":2,\"n\":2}"};
    int answers[6] = {0}, status;
    start(&chance, "chatml");
    for (int i = 0; i < 1000; i++) {
        char body[400];
        snprintf(body, sizeof body, "%s", good[i % 2]);
        size_t n = strlen(body);
        for (uint32_t k = 0; k <= noise() % 3; k++) {
            static const char bytes[] = "\"[]{}:,0-9e\\u\xFF\x80 nulltrue";
            const size_t p = noise() % n;
            if (noise() % 4 == 0) memmove(body + p, body + p + 1, n-- - p);
            else body[p] = bytes[noise() % (sizeof bytes - 1)];
        }
        char *text = ask(i % 2 ? "/v1/chat/completions" : "/v1/completions", body, &status);
        json_t *answer = json_loads(text, JSON_ALLOW_NUL, NULL);
        assert_true(answer && status >= 200 && status < 500);
        assert_true((status == 200) == (json_object_get(answer, "choices") != NULL));
        assert_true((status != 200) == (json_object_get(answer, "error") != NULL));
        answers[status / 100]++;
        json_decref(answer), free(text);
    }
    assert_true(answers[2] > 10 && answers[4] > 500);
    for (int i = 0; i < 200; i++) {
        static const char *const heads[] = {"", "POST /v1/completions HTTP/1.1\r\n",
                                            "POST /v1/completions HTTP/1.1\r\n" HEAD "Content-Length: 5\r\n\r\n",
                                            "POST /v1/completions HTTP/1.1\r\n" HEAD
                                            "Transfer-Encoding: chunked\r\n\r\n"};
        const int s = dial();
        char junk[300];
        for (size_t k = 0; k < sizeof junk; k++) junk[k] = (char)noise();
        say(s, heads[i % 4], strlen(heads[i % 4]));
        say(s, junk, noise() % sizeof junk);
        shutdown(s, SHUT_WR);
        free(hear(s));
    }
    json_decref(completion("{\"prompt\":\"a\"}"));
    stop();
}

/* ---- limits ---------------------------------------------------------------------------------------------------- */

static void a_slow_client_is_dropped(void **state) {
    (void)state;
    settings.patience = 0.2;
    start(&chance, NULL);
    const int s = dial(), t = dial();
    const double began = clock_seconds();
    say(s, "GET /v1/models HTTP/1.1\r\nHo", 27);
    say(t, "POST /v1/completions HTTP/1.1\r\n" HEAD "Content-Length: 20\r\n\r\n{\"pro", 96);
    free(hear(s)), free(hear(t));
    assert_true(clock_seconds() - began < 30);
    json_decref(completion("{\"prompt\":\"a\"}"));
    settings.patience = 0;
    stop();
}

/* As many clients as there may be connections, which send a byte now and then and never the end of a request: each is dropped
 * once its time is over, however recently it has sent something, and then requests are answered again. */
static void clients_that_trickle_are_dropped(void **state) {
    (void)state;
    static const char *const begun[] = {"GET /v1/models HTTP/1.1\r\nX: ",
                                        "POST /v1/completions HTTP/1.1\r\n" HEAD "Content-Length: 10000\r\n\r\n"};
    int s[SERVE_CONNECTIONS], left = SERVE_CONNECTIONS;
    settings.patience = 0.5;
    start(&chance, NULL);
    const double began = clock_seconds();
    for (int i = 0; i < SERVE_CONNECTIONS; i++) {
        s[i] = dial();
        say(s[i], begun[i % 2], strlen(begun[i % 2]));
    }
    for (; left; usleep(20000)) {
        if (clock_seconds() - began > 30) fail_msg("%d clients are left after 30 seconds", left);
        for (int i = 0; i < SERVE_CONNECTIONS; i++) {
            char byte;
            if (s[i] < 0) continue;
            const ssize_t n = recv(s[i], &byte, 1, MSG_DONTWAIT);
            if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
                say(s[i], "x", 1);
                continue;
            }
            assert_true(n <= 0); /* closed, without an answer */
            close(s[i]);
            s[i] = -1;
            left--;
        }
    }
    assert_true(clock_seconds() - began > settings.patience);
    json_decref(completion("{\"prompt\":\"a\"}"));
    settings.patience = 0;
    stop();
}

static void a_key_is_needed(void **state) {
    (void)state;
    int status;
    settings.key = "secret";
    start(&chance, NULL);
    json_t *a = answer_of("/v1/completions", "{\"prompt\":\"a\"}", 401);
    assert_string_equal(json_text_of(json_object_get(a, "error"), "type"), "invalid_request_error");
    assert_string_equal(json_text_of(json_object_get(a, "error"), "code"), "invalid_api_key");
    json_decref(a);
    char *text = ask_with("GET", "/v1/models", HEAD "Authorization: Bearer secreT\r\n", "", &status);
    assert_int_equal(status, 401);
    free(text);
    text = ask_with("GET", "/v1/models", HEAD "Authorization: Bearer secret\r\n", "", &status);
    assert_int_equal(status, 200);
    free(text);
    text = ask_with("GET", "/", HEAD, "", &status); /* the page asks for the key */
    assert_int_equal(status, 200);
    free(text);
    settings.key = NULL;
    stop();
}

/* Waits until no job is left, for a minute at most. */
static void await_idle(void) {
    const double end = clock_seconds() + 60;
    for (bool idle = false; !idle; usleep(2000)) {
        pthread_mutex_lock(&server.engine.lock);
        idle = !server.engine.first;
        pthread_mutex_unlock(&server.engine.lock);
        if (clock_seconds() > end) fail_msg("jobs are left after a minute");
    }
}

static void wait_for_jobs(int64_t n) {
    for (bool there = false; !there; usleep(500)) {
        pthread_mutex_lock(&server.engine.lock);
        there = server.engine.jobs >= n;
        pthread_mutex_unlock(&server.engine.lock);
    }
}

/* Waits until every job has begun. */
static void wait_for_slot(void) {
    for (bool begun = false; !begun; usleep(500)) {
        pthread_mutex_lock(&server.engine.lock);
        begun = !server.engine.waiting;
        pthread_mutex_unlock(&server.engine.lock);
    }
}

/* A slot, two places to wait, and requests that take long: the next one is refused, those of clients that leave end. */
static void clients_that_leave_end_their_jobs(void **state) {
    (void)state;
    static const char head[] = "POST /v1/completions HTTP/1.1\r\nConnection: close\r\n" HEAD;
    settings.slots = 1;
    settings.queue = 2;
    start(&chance, NULL);
    int s[3];
    for (int i = 0; i < 3; i++) { /* a stream and two whole answers, of a thousand completions each */
        char request[500], body[200];
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"max_tokens\":90,\"n\":1000,\"seed\":1,\"stream\":%s}",
                 i ? "false" : "true");
        snprintf(request, sizeof request, "%sContent-Length: %zu\r\n\r\n%s", head, strlen(body), body);
        s[i] = dial();
        say(s[i], request, strlen(request));
        wait_for_jobs(i + 1);
        if (!i) wait_for_slot();
    }
    json_t *a = answer_of("/v1/completions", "{\"prompt\":\"a\"}", 429);
    assert_string_equal(json_text_of(json_object_get(a, "error"), "type"), "requests");
    assert_string_equal(json_text_of(json_object_get(a, "error"), "code"), "rate_limit_exceeded");
    json_decref(a);
    for (int i = 0; i < 3; i++) close(s[i]);
    await_idle();
    json_decref(completion("{\"prompt\":\"a\"}"));
    /* the server's end fails what is not over */
    s[0] = dial();
    char request[400];
    snprintf(request, sizeof request, "%sContent-Length: 50\r\n\r\n%-50s", head,
             "{\"prompt\":\"a\",\"max_tokens\":90,\"n\":1000}");
    say(s[0], request, strlen(request));
    wait_for_jobs(5);
    server.stop = true;
    int status;
    char *answer = hear(s[0]), *text = body_of(answer, &status);
    assert_int_equal(status, 503);
    assert_holds(text, "the server is stopping");
    free(answer), free(text);
    settings.slots = SLOTS;
    settings.queue = 100;
    stop();
}

typedef struct Client {
    int number;
    char *text;
    pthread_t thread;
} Client;

static void *client(void *context) {
    Client *c = (Client *)context;
    char body[200];
    int status;
    snprintf(body, sizeof body, "{\"prompt\":\"client %d\",\"max_tokens\":16,\"seed\":%d,\"temperature\":%s%s}",
             c->number % 7, c->number, c->number % 3 ? "0.8" : "0", c->number % 2 ? ",\"logprobs\":1" : "");
    c->text = ask("/v1/completions", body, &status);
    return NULL;
}

/* 64 clients at once, with different settings: each gets what it gets alone. */
static void many_clients_do_not_disturb_each_other(void **state) {
    (void)state;
    Client together[64], alone;
    start(&chance, NULL);
    for (int i = 0; i < 64; i++) {
        together[i] = (Client){.number = i};
        assert_int_equal(pthread_create(&together[i].thread, NULL, client, &together[i]), 0);
    }
    for (int i = 0; i < 64; i++) pthread_join(together[i].thread, NULL);
    for (int i = 0; i < 64; i++) {
        alone = (Client){.number = i};
        client(&alone);
        json_t *a = json_loads(together[i].text, JSON_ALLOW_NUL, NULL),
               *b = json_loads(alone.text, JSON_ALLOW_NUL, NULL);
        if (!a || !b) fail_msg("client %d: %s", i, together[i].text);
        assert_string_equal(json_text_of(choice(a, 0), "text"), json_text_of(choice(b, 0), "text"));
        free(together[i].text), free(alone.text), json_decref(a), json_decref(b);
    }
    stop();
}

/* ---- the prefix cache ------------------------------------------------------------------------------------------ */

enum { TALKS = 3, TALK_TURNS = 4 };

/* Asks for turn t of conversation k, whose text grows by the answer. The answer's choices; *cached: tokens of the prompt that
 * were in the cache, *same: those that the last turn has left. */
static json_t *talk(int k, int t, char text[1000], int *cached, int *same) {
    const int n = (int)strlen(text);
    json_t *q = json_pack("{s:s,s:i,s:i,s:i,s:f,s:b}", "prompt", text, "max_tokens", 5, "seed", 10 * k + t, "logprobs",
                          3, "temperature", t == 3 ? 0.0 : 0.3, "return_token_ids", 1);
    char *body = json_dumps(q, 0);
    json_t *a = completion(body), *choices = json_incref(json_object_get(a, "choices"));
    const json_t *ids = json_object_get(choice(a, 0), "token_ids"), *usage = json_object_get(a, "usage");
    bool letters = true; /* else the next prompt has other tokens */
    for (size_t i = 0; i < json_array_size(ids); i++) letters = letters && at(ids, i) < 127;
    *cached = (int)json_number_of(json_object_get(usage, "prompt_tokens_details"), "cached_tokens");
    *same = letters ? n + (int)json_array_size(ids) - 1 : 0;
    snprintf(text + n, 1000 - (size_t)n, "%s%s", json_text_of(choice(a, 0), "text"), t % 2 ? " and" : "!");
    json_decref(a), json_decref(q), free(body);
    return choices;
}

/* Conversations with the cache of earlier requests, in turns, and one after another: the same tokens and log-probabilities to
 * the bit, whatever else the slots were used for; and the same up to rounding without the cache. The cache holds all tokens
 * of the last turn but the last one. */
static void prefixes_change_nothing(void **state) {
    (void)state;
    json_t *answer[3][TALKS][TALK_TURNS];
    int hits = 0;
    for (int run = 0; run < 3; run++) {
        char text[TALKS][1000] = {"The quick brown fox", "A lazy dog and", "Lorem"};
        int same[TALKS] = {0}, cached;
        settings.no_prefixes = run == 2;
        start(&chance, NULL);
        for (int i = 0; i < TALKS * TALK_TURNS; i++) {
            const int k = run == 1 ? i / TALK_TURNS : i % TALKS, t = run == 1 ? i % TALK_TURNS : i / TALKS;
            const int before = same[k];
            answer[run][k][t] = talk(k, t, text[k], &cached, &same[k]);
            if (before) assert_int_equal(cached, run == 2 ? 0 : before); /* there are more slots than conversations */
            hits += before && run < 2;
        }
        stop();
    }
    settings.no_prefixes = false;
    assert_true(hits >= 6);
    for (int k = 0; k < TALKS; k++)
        for (int t = 0; t < TALK_TURNS; t++) {
            const json_t *one = json_array_get(answer[0][k][t], 0), *other = json_array_get(answer[2][k][t], 0);
            assert_true(json_equal(answer[0][k][t], answer[1][k][t]));
            assert_true(json_equal(json_object_get(one, "token_ids"), json_object_get(other, "token_ids")));
            const json_t *x = json_object_get(json_object_get(one, "logprobs"), "token_logprobs"),
                         *y = json_object_get(json_object_get(other, "logprobs"), "token_logprobs");
            for (size_t i = 0; i < json_array_size(x); i++) assert_near(at(x, i), at(y, i), 1e-5);
            for (int run = 0; run < 3; run++) json_decref(answer[run][k][t]);
        }
}

/* ---- trajectories ---------------------------------------------------------------------------------------------- */

static ServeGateway gateway;

/* A model that writes x's, and ends its turn at every third position. */
static Model turns_model(void) {
    int32_t script[CONTEXT];
    for (int p = 0; p < CONTEXT; p++) script[p] = p % 3 ? 'x' : MODELS_IM_END;
    return models_scripted(CONTEXT, script, NULL, CONTEXT);
}

static void start_gateway(Model *m, const char *template, int32_t most) {
    settings.gateway = &gateway;
    settings.most = most;
    start(m, template);
    settings.gateway = NULL;
}

static void stop_gateway(void) {
    stop();
    serve_gateway_close(&gateway);
}

/* Asks for a trajectory. */
static json_t *ask_trajectory(const ServeTrajectory *y, const char *path, const char *body, int expected) {
    char all[200];
    snprintf(all, sizeof all, "/r/%s/v1/%s", y->key, path);
    return answer_of(all, body, expected);
}

/* Two models: requests name one of them; both work at the same time. */
static void requests_choose_their_model(void **state) {
    (void)state;
    Model m = turns_model();
    settings.second = &m;
    start(&chance, "chatml");
    settings.second = NULL;
    json_t *first = completion("{\"prompt\":\"abcd\",\"max_tokens\":2,\"temperature\":0}");
    json_t *named = completion("{\"prompt\":\"abcd\",\"max_tokens\":2,\"temperature\":0,\"model\":\"tiny\"}");
    json_t *second = completion("{\"prompt\":\"abcd\",\"max_tokens\":5,\"model\":\"second\"}");
    assert_true(json_equal(json_object_get(first, "choices"), json_object_get(named, "choices")));
    assert_string_equal(json_text_of(second, "model"), "second");
    assert_string_equal(json_text_of(choice(second, 0), "finish_reason"), "stop");
    assert_true(strspn(json_text_of(choice(second, 0), "text"), "x") ==
                strlen(json_text_of(choice(second, 0), "text")));
    json_decref(first), json_decref(named), json_decref(second);
    Joined j = join("/v1/completions", "{\"prompt\":\"abcd\",\"model\":\"second\",\"stream\":true}", 0);
    assert_true(j.done && strspn(j.text.text, "x") == j.text.length);
    joined_free(&j);
    int status;
    char *refused = ask_with("POST", "/v1/completions", HEAD, "{\"prompt\":\"a\",\"model\":\"third\"}", &status);
    assert_int_equal(status, 404);
    assert_holds(refused, "this server has 'tiny' and 'second'");
    free(refused);
    char *models = ask_with("GET", "/v1/models", HEAD, "", &status);
    assert_holds(models, "\"id\":\"tiny\"");
    assert_holds(models, "\"id\":\"second\"");
    free(models);
    stop();
    model_free(&m);
}

#define U(text) "{\"role\":\"user\",\"content\":\"" text "\"}"
#define A(text) "{\"role\":\"assistant\",\"content\":\"" text "\"}"

/* Keeps the id of an answer, which is to be freed. */
static void keep_id(json_t *ids, json_t *answer) {
    const char *id = json_text_of(answer, "id");
    if (json_object_get(ids, id)) fail_msg("the id %s is that of two answers", id);
    json_object_set_new(ids, id, json_true());
    json_decref(answer);
}

/* Texts and chats of both models, whole and streamed, have ids of their own; all pieces of a stream have the same. */
static void ids_are_those_of_one_answer(void **state) {
    (void)state;
    Model m = turns_model();
    json_t *ids = json_object();
    settings.second = &m;
    start(&chance, "chatml");
    settings.second = NULL;
    for (int i = 0; i < 6; i++) {
        static const char *const models[] = {"tiny", "second"};
        char body[200];
        int status, pieces = 0;
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"max_tokens\":1,\"model\":\"%s\"}", models[i % 2]);
        keep_id(ids, completion(body));
        snprintf(body, sizeof body, "{\"messages\":[" U("a") "],\"max_tokens\":1,\"model\":\"%s\"}", models[i % 2]);
        keep_id(ids, chat(body));
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"max_tokens\":3,\"model\":\"%s\",\"stream\":true}",
                 models[i % 2]);
        char *text = ask("/v1/completions", body, &status), id[64] = "";
        for (const char *at = text; (at = strstr(at, "\"id\":\"")); pieces++) {
            char here[64] = "";
            at += 6;
            snprintf(here, sizeof here, "%.*s", (int)strcspn(at, "\""), at);
            if (!pieces) snprintf(id, sizeof id, "%s", here);
            assert_string_equal(here, id);
        }
        assert_true(pieces > 0);
        keep_id(ids, json_pack("{s:s}", "id", id));
        free(text);
    }
    assert_int_equal(json_object_size(ids), 18);
    json_decref(ids);
    stop();
    model_free(&m);
}

/* The completion of a trajectory, which ends. */
static Completion taken(ServeTrajectory *y) {
    Completion c;
    serve_trajectory_close(&gateway, y);
    while (!serve_trajectory_idle(&gateway, y)) usleep(500);
    serve_trajectory_take(y, &c);
    return c;
}

/* Appends the numbers of a list; returns their count. */
static int32_t numbers(const json_t *list, int32_t *to) {
    for (size_t i = 0; i < json_array_size(list); i++) to[i] = (int32_t)at(list, i);
    return (int32_t)json_array_size(list);
}

/* Whether branch k of a completion is a prompt and its answer, as a chat's reply lists them. */
static void assert_branch(const Completion *c, int32_t k, const json_t *reply) {
    const Trajectory *y = c->trajectory;
    int32_t ids[2 * CONTEXT];
    const int32_t from = y->branch[k], n = trajectory_branch_end(y, k, c->count) - from;
    const int32_t prompt = numbers(json_object_get(reply, "prompt_token_ids"), ids);
    const int32_t drawn = numbers(json_object_get(choice(reply, 0), "token_ids"), ids + prompt);
    assert_int_equal(n, prompt + drawn);
    assert_memory_equal(c->tokens + from, ids, (size_t)n * sizeof *ids);
    for (int32_t i = prompt; i < n; i++) assert_true(y->drawn[from + i] && c->logp[from + i] <= 0);
    assert_false(y->drawn[from + prompt - 1]);
}

#define IDS "],\"return_token_ids\":true"

/* Chats of one trajectory: the next turn continues the drawn tokens; another conversation, and one whose history was changed,
 * are branches; each is continued after the others. */
static void chats_become_branches(void **state) {
    (void)state;
    Model m = turns_model();
    start_gateway(&m, "chatml", 1000);
    ServeTrajectory *y = serve_trajectory_open(&gateway, 5);
    const char *said[4] = {0};
    char body[500];
    json_t *first = ask_trajectory(y, "chat/completions", "{\"messages\":[" U("ab") IDS "}", 200);
    said[0] = json_text_of(json_object_get(choice(first, 0), "message"), "content");
    /* rule 1: what was drawn, then the template's words */
    snprintf(body, sizeof body, "{\"messages\":[" U("ab") "," A("%s") "," U("q") IDS "}", said[0]);
    json_t *second = ask_trajectory(y, "chat/completions", body, 200);
    static const char next[] = "\n<user\nq>\n<assistant\n"; /* < and > are the special tokens */
    int32_t want[CONTEXT], got[CONTEXT];
    int32_t n = numbers(json_object_get(first, "prompt_token_ids"), want);
    n += numbers(json_object_get(choice(first, 0), "token_ids"), want + n);
    assert_int_equal(want[n - 1], MODELS_IM_END);
    for (const char *s = next; *s; s++)
        want[n++] = *s == '<' ? MODELS_IM_END - 1 : *s == '>' ? MODELS_IM_END : (unsigned char)*s;
    assert_int_equal(numbers(json_object_get(second, "prompt_token_ids"), got), n);
    assert_memory_equal(got, want, (size_t)n * sizeof *want);
    /* another conversation, as a stream, with the key in the header */
    char head[300];
    int status;
    snprintf(head, sizeof head, HEAD "Authorization: Bearer %s\r\n", y->key);
    char *events =
        ask_with("POST", "/v1/chat/completions", head, "{\"messages\":[" U("other") "],\"stream\":true}", &status);
    assert_int_equal(status, 200);
    assert_holds(events, "data: [DONE]");
    free(events);
    /* the first one goes on */
    said[1] = json_text_of(json_object_get(choice(second, 0), "message"), "content");
    snprintf(body, sizeof body, "{\"messages\":[" U("ab") "," A("%s") "," U("q") "," A("%s") "," U("r") IDS "}",
             said[0], said[1]);
    json_t *third = ask_trajectory(y, "chat/completions", body, 200);
    assert_true(json_array_size(json_object_get(third, "prompt_token_ids")) > (size_t)n + 10);
    /* a changed history */
    json_t *changed =
        ask_trajectory(y, "chat/completions", "{\"messages\":[" U("ab") "," A("no") "," U("q") IDS "}", 200);
    assert_int_equal(y->branches, 3);
    Completion c = taken(y);
    const Trajectory *t = c.trajectory;
    assert_int_equal(t->branches, 3);
    assert_int_equal(t->turns, 5);
    assert_branch(&c, 1, third);
    assert_branch(&c, 2, changed);
    assert_int_equal(t->first, c.count - (int32_t)json_array_size(json_object_get(choice(changed, 0), "token_ids")));
    assert_int_equal(t->start[1], t->branch[1] + (int32_t)json_array_size(json_object_get(first, "prompt_token_ids")));
    assert_int_equal(json_array_size(t->messages), 4);
    completion_free(&c);
    json_decref(first), json_decref(second), json_decref(third), json_decref(changed);
    /* it has ended; a key that never was */
    json_decref(answer_of("/v1/chat/completions", "{\"messages\":[" U("a") "]}", 401));
    json_decref(answer_of("/r/5-00/v1/completions", "{\"prompt\":\"a\"}", 401));
    stop_gateway();
    model_free(&m);
}

/* Texts of one trajectory: log-probabilities of the drawn tokens are those of an uncached pass over each branch; the trainer's
 * settings; draws that depend on the trajectory alone; a trajectory that is full. */
static void texts_become_branches(void **state) {
    (void)state;
    char text[3][200];
    start_gateway(&chance, NULL, 100);
    uint64_t id = 0; /* of which the first text is one of letters that is truncated */
    for (bool found = false; !found;) {
        ServeTrajectory *y = serve_trajectory_open(&gateway, ++id);
        json_t *a = ask_trajectory(y, "completions", "{\"prompt\":\"abc\",\"max_tokens\":12}", 200);
        found = strlen(json_text_of(choice(a, 0), "text")) == 12;
        json_decref(a);
        Completion c = taken(y);
        for (int32_t i = 0; i < c.count; i++) found = found && c.tokens[i] < 127;
        completion_free(&c);
    }
    for (int run = 0; run < 2; run++) { /* the same twice */
        ServeTrajectory *y = serve_trajectory_open(&gateway, id);
        char body[400];
        json_t *a = ask_trajectory(y, "completions", "{\"prompt\":\"abc\",\"max_tokens\":12,\"temperature\":0.2}", 200);
        char *got = strdup(json_text_of(choice(a, 0), "text"));
        json_decref(a);
        /* the same prompt draws another text; the first text goes on */
        a = ask_trajectory(y, "completions", "{\"prompt\":\"abc\",\"max_tokens\":12}", 200);
        assert_string_not_equal(json_text_of(choice(a, 0), "text"), got);
        json_decref(a);
        json_t *prompt = json_sprintf("abc%sX", got), *q = json_pack("{s:o,s:i}", "prompt", prompt, "max_tokens", 5);
        char *dump = json_dumps(q, 0);
        snprintf(body, sizeof body, "%s", dump);
        a = ask_trajectory(y, "completions", body, 200);
        assert_int_equal(y->branches, 2);
        snprintf(text[run], sizeof text[run], "%s|%s", got, json_text_of(choice(a, 0), "text"));
        json_decref(a), json_decref(q), free(dump), free(got);
        /* 100 tokens in all */
        json_decref(ask_trajectory(y, "completions", "{\"prompt\":\"abc\",\"n\":2}", 400));
        json_decref(ask_trajectory(y, "completions", "{\"prompt\":\"abc\",\"echo\":true,\"max_tokens\":0}", 400));
        a = ask_trajectory(y, "completions", "{\"prompt\":\"qqqqqqqqqq\",\"max_tokens\":1000,\"model\":\"gpt\"}", 200);
        if (!strcmp(json_text_of(choice(a, 0), "finish_reason"), "length")) {
            assert_int_equal(y->tokens, 100);
            assert_true(y->full);
        }
        json_decref(a);
        snprintf(body, sizeof body, "{\"prompt\":\"%0100d\"}", 0);
        a = ask_trajectory(y, "completions", body, 400);
        assert_string_equal(json_text_of(json_object_get(a, "error"), "code"), "context_length_exceeded");
        json_decref(a);
        assert_true(y->overridden == 1 && y->full);
        Completion c = taken(y);
        const Trajectory *t = c.trajectory;
        assert_int_equal(t->branches, 3);
        for (int32_t k = 0; k < t->branches; k++) {
            const int32_t from = t->branch[k], n = trajectory_branch_end(t, k, c.count) - from;
            float *z = models_logits(&chance, c.tokens + from, n);
            for (int32_t i = 1; i < n; i++)
                if (t->drawn[from + i])
                    assert_near(c.logp[from + i], -models_nats(z + (i - 1) * MODELS_VOCAB, 1, c.tokens[from + i]),
                                1e-4);
            free(z);
        }
        completion_free(&c);
    }
    assert_string_equal(text[0], text[1]);
    stop_gateway();
}

/* A prompt without room is refused with a message that names its limit, and the trajectory is full: the tokens of a trajectory, of
 * which a text that continues nothing needs all of its own; and the context. */
static void prompts_without_room_are_refused(void **state) {
    (void)state;
    static const struct {
        int32_t most;
        int asked, length;
        const char *why;
    } cases[] = {
        {100, 0, 200, "the prompt has 200 tokens, of which 200 are new; a trajectory has at most 100 tokens"},
        {100, 5, 90, "the prompt has 90 tokens, of which 90 are new because it continues none of the earlier"},
        {1000, 0, CONTEXT, "this model's maximum context length is 192 tokens, but the prompt has 192 and"},
        {1000, 5, CONTEXT + 9, "this model's maximum context length is 192 tokens, but the prompt has 201 and"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[400];
        start_gateway(&chance, NULL, cases[i].most);
        ServeTrajectory *y = serve_trajectory_open(&gateway, 7);
        if (cases[i].asked) {
            snprintf(body, sizeof body, "{\"prompt\":\"%0*d\",\"max_tokens\":8}", cases[i].asked, 1);
            json_decref(ask_trajectory(y, "completions", body, 200));
        }
        assert_false(y->full);
        snprintf(body, sizeof body, "{\"prompt\":\"%0*d\",\"max_tokens\":8}", cases[i].length, 2);
        json_t *a = ask_trajectory(y, "completions", body, 400), *fault = json_object_get(a, "error");
        assert_string_equal(json_text_of(fault, "code"), "context_length_exceeded");
        assert_holds(json_text_of(fault, "message"), cases[i].why);
        assert_true(y->full);
        assert_int_equal(y->branches, cases[i].asked > 0);
        json_decref(a);
        Completion c = taken(y);
        completion_free(&c);
        stop_gateway();
    }
}

/* A text whose tokens are others when it is encoded again: the drawn ones are kept. */
static void drawn_tokens_are_not_encoded_again(void **state) {
    (void)state;
    Error e;
    ModelText t = {.present = true};
    if (!tokenizer_open(&t.tokenizer, "tests/golden/tokenizer_small.json", &e)) fail_msg("%s", e.text);
    ServeModel m = {.text = &t, .vocab = 600, .length = 100};
    TokenList drawn = {0}, whole = {0};
    assert_true(tokenizer_encode(&t.tokenizer, "aaaa", 4, TOKENIZER_CONTINUES, &whole, &e) && whole.count < 4);
    for (int i = 0; i < 4; i++) assert_true(tokenizer_encode(&t.tokenizer, "a", 1, TOKENIZER_CONTINUES, &drawn, &e));
    ServeBranch b = {.ids = drawn.ids, .count = drawn.count};
    ServeTrajectory y = {.branch = &b, .branches = 1};
    for (int i = 0; i < 2; i++) { /* a text that goes on, and another one */
        char *text[1] = {(char *)(i ? "aab" : "aaaa world")};
        const char *rest = i ? "aab" : " world";
        const int32_t before = i ? 0 : 4;
        TokenList prompt = {0};
        assert_true(tokenizer_encode(&t.tokenizer, text[0], strlen(text[0]), TOKENIZER_CONTINUES, &prompt, &e));
        ServeRequest q = {.kind = SERVE_COMPLETION, .prompt = &prompt, .text = text, .prompts = 1};
        assert_int_equal(serve_trajectory_continue(&y, &m, &q), i ? -1 : 0);
        whole.count = 0;
        assert_true(tokenizer_encode(&t.tokenizer, rest, strlen(rest), TOKENIZER_CONTINUES, &whole, &e));
        assert_int_equal(prompt.count, before + whole.count);
        assert_memory_equal(prompt.ids, drawn.ids, (size_t)before * sizeof(int32_t));
        assert_memory_equal(prompt.ids + before, whole.ids, (size_t)whole.count * sizeof(int32_t));
        token_list_free(&prompt);
    }
    token_list_free(&drawn), token_list_free(&whole), tokenizer_free(&t.tokenizer);
}

static int setup(void **state) {
    if (models_setup(state)) return 1;
    chance = models_random(CONTEXT);
    return 0;
}

static int teardown(void **state) {
    model_free(&chance);
    return models_teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_text_is_that_of_the_model),
        cmocka_unit_test(log_probabilities_are_those_of_a_forward_pass),
        cmocka_unit_test(samples_depend_on_their_seed_alone),
        cmocka_unit_test(pieces_join_to_the_whole),
        cmocka_unit_test(stop_texts_end_the_text),
        cmocka_unit_test(chats_use_the_template),
        cmocka_unit_test(calls_are_read),
        cmocka_unit_test(templates_get_what_messages_say),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(malformed_requests_are_survived),
        cmocka_unit_test(a_slow_client_is_dropped),
        cmocka_unit_test(clients_that_trickle_are_dropped),
        cmocka_unit_test(a_key_is_needed),
        cmocka_unit_test(clients_that_leave_end_their_jobs),
        cmocka_unit_test(many_clients_do_not_disturb_each_other),
        cmocka_unit_test(prefixes_change_nothing),
        cmocka_unit_test(requests_choose_their_model),
        cmocka_unit_test(ids_are_those_of_one_answer),
        cmocka_unit_test(chats_become_branches),
        cmocka_unit_test(texts_become_branches),
        cmocka_unit_test(prompts_without_room_are_refused),
        cmocka_unit_test(drawn_tokens_are_not_encoded_again),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

#else
#include <stdio.h>

/* Without libmicrohttpd there is no server. */
int main(void) {
    puts("[  PASSED  ] 0 test(s).");
    return 0;
}
#endif
