/* request.h - requests of OpenAI's API as JSON: POST /v1/completions and POST /v1/chat/completions.
 *
 * A field that is not supported is an error unless it is null or has the value that changes nothing, and so is a value
 * out of range: what a client asks for is never left out without a word. Fields that OpenAI does not have carry vLLM's names
 * (top_k, min_p, return_token_ids).
 *
 *   prompt     a text, a list of token ids, or a list of either. In a text the names of special tokens are recognised, as
 *              with `generate --raw`
 *   messages   are written by the model's chat template, as in training; a template with sections writes calls and
 *              their results as text, in the model's tool format
 *
 *     ServeRequest q;
 *     ServeFault fault;
 *     json_t *body = serve_body(text, length, &fault);
 *     if (!body || !serve_request(&q, &served, SERVE_CHAT, body, &fault)) print(fault.status, fault.e.text);
 *     json_decref(body);
 *     serve_request_free(&q);
 */
#ifndef LLMC_SERVE_REQUEST_H
#define LLMC_SERVE_REQUEST_H

#include "../base/error.h"        /* xcalloc, Error, xstrdup, PRINTF_LIKE */
#include "../base/options.h"      /* option_choice_index */
#include "../base/text.h"         /* TokenList, text_string, TextBuffer, text_free, ... */
#include "../model/model_text.h"  /* ModelText */
#include "../rollout/rollout.h"   /* Sampling */
#include "../rollout/stop_text.h" /* STOP_TEXTS_MAX */
#include "../text/chat.h"         /* ChatMessage, chat_encode, chat_encode_answer, chat_encode_conversation */
#include "../text/tokenizer.h"    /* TOKENIZER_CONTINUES, TOKENIZER_DOCUMENT, TOKENIZER_SPECIALS, ... */
#include "../tools/tool_format.h" /* ToolFormat, tool_format_call, tool_format_messages */
#include <jansson.h>

enum {
    SERVE_STOPS = 4, /* stop texts of a request */
    SERVE_TOP = 5,   /* alternatives for each token of a completion; chats: SERVE_TOP_CHAT */
    SERVE_TOP_CHAT = 20,
    SERVE_SAMPLES = 1024,     /* completions, or scored prompts, of a request */
    SERVE_LOGPROBS = 1 << 21, /* log-probabilities of an answer, those of alternatives included */
    SERVE_NEW = 16,           /* tokens of a completion without max_tokens */
};

typedef enum { SERVE_COMPLETION = 1, SERVE_CHAT = 2, SERVE_BOTH = 3 } ServeKind;

/* What is served. */
typedef struct ServeModel {
    const char *name;
    const ModelText *text;
    int32_t vocab;
    int32_t length;    /* maximum tokens of a prompt with its completion */
    Sampling standard; /* the settings of a request without its own; max_new: of a chat */
    ToolFormat format; /* of calls */
    bool has_format;
    const char *other; /* name of a second model of this server, or NULL */
    bool gateway; /* of trajectories (gateway.h): has any name, and a max_tokens above what fits is lowered to it */
} ServeModel;

/* Why a request is refused. */
typedef struct ServeFault {
    int status; /* of HTTP */
    Error e;
    char param[64];    /* the field that it is about; "": none */
    const char *code;  /* or NULL */
    const char *allow; /* the methods that there are; only with status 405 */
} ServeFault;

typedef struct ServeRequest {
    ServeKind kind;
    TokenList *prompt; /* (prompts) */
    char **text;       /* (prompts) as they were given; NULL: as ids */
    int prompts;
    int samples;  /* of each prompt */
    Sampling how; /* how.max_new: maximum tokens, 0: none are drawn */
    bool limited; /* the request has a maximum */
    char *stop[SERVE_STOPS];
    int stops;
    int top; /* alternatives for each token; -1: no log-probabilities */
    bool echo, stream, usage, token_ids;
    bool seeded;
    uint64_t seed;
    bool named;       /* of a trajectory: the samples have ids from `id` on, which select their random numbers */
    uint64_t id;      /* of a trajectory: of the first sample */
    uint64_t number;  /* in the ids of the answer and of its calls: that of no other request */
    json_t *tools;    /* a list, or NULL */
    json_t *messages; /* of a chat, in the form of serve_message() */
    bool calls;       /* calls are read from the completion */
    bool no_calls;    /* tool_choice none */
} ServeRequest;

static inline void serve_request_free(ServeRequest *q) {
    for (int i = 0; i < q->prompts; i++) {
        token_list_free(&q->prompt[i]);
        free(q->text[i]);
    }
    for (int i = 0; i < q->stops; i++) free(q->stop[i]);
    free(q->prompt), free(q->text);
    json_decref(q->tools), json_decref(q->messages);
    *q = (ServeRequest){0};
}

PRINTF_LIKE(4, 5)
static inline bool serve_refuse(ServeFault *f, int status, const char *param, const char *format, ...) {
    va_list args;
    *f = (ServeFault){.status = status};
    snprintf(f->param, sizeof f->param, "%s", param);
    va_start(args, format);
    vsnprintf(f->e.text, sizeof f->e.text, format, args);
    va_end(args);
    for (char *s = f->e.text; *s; s++)
        if ((unsigned char)*s < 32) *s = ' ';
    return false;
}

/* Gives a fault one of OpenAI's codes. Returns false, as serve_refuse() does. */
static inline bool serve_code(ServeFault *f, const char *code) {
    f->code = code;
    return false;
}

/* ---- values ---------------------------------------------------------------------------------------------------- */

static inline const char *serve_type(const json_t *value) {
    static const char *const names[] = {"an object", "a list", "a text", "an integer",
                                        "a number",  "true",   "false",  "null"};
    return names[json_typeof(value)];
}

/* Refuses a value of another type than is expected. */
static inline bool serve_wrong_type(ServeFault *f, const char *name, const json_t *value, const char *expected) {
    return serve_refuse(f, 400, name, "%s is %s, expected %s", name, serve_type(value), expected) ||
           serve_code(f, "invalid_type");
}

static inline bool serve_flag(const json_t *value, const char *name, bool *flag, ServeFault *f) {
    if (!json_is_boolean(value)) return serve_wrong_type(f, name, value, "true or false");
    *flag = json_is_true(value);
    return true;
}

static inline bool serve_integer(const json_t *value, const char *name, int64_t low, int64_t high, int64_t *out,
                                 ServeFault *f) {
    *out = 0;
    if (!json_is_integer(value)) return serve_wrong_type(f, name, value, "an integer");
    *out = json_integer_value(value);
    return (*out >= low && *out <= high) ||
           serve_refuse(f, 400, name, "%s is %lld, expected %lld to %lld", name, (long long)*out, (long long)low,
                        (long long)high) ||
           serve_code(f, *out < low ? "integer_below_min_value" : "integer_above_max_value");
}

static inline bool serve_number(const json_t *value, const char *name, double low, double high, float *out,
                                ServeFault *f) {
    if (!json_is_number(value)) return serve_wrong_type(f, name, value, "a number");
    const double x = json_number_value(value);
    *out = (float)x;
    return (x >= low && x <= high) || serve_refuse(f, 400, name, "%s is %g, expected %g to %g", name, x, low, high) ||
           serve_code(f, x < low ? "decimal_below_min_value" : "decimal_above_max_value");
}

/* ---- the fields of both kinds ---------------------------------------------------------------------------------- */

typedef bool (*ServeRead)(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f);

static inline bool serve_read_model(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    const char *name = json_string_value(value);
    char other[128] = "";
    (void)q;
    if (!name) return serve_wrong_type(f, "model", value, "a text");
    if (m->gateway || !strcmp(name, m->name)) return true;
    if (m->other) snprintf(other, sizeof other, " and '%.100s'", m->other);
    return serve_refuse(f, 404, "model", "the model '%.100s' does not exist; this server has '%.100s'%s", name, m->name,
                        other) ||
           serve_code(f, "model_not_found");
}

static inline bool serve_read_max(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    int64_t n;
    if (!serve_integer(value, "max_tokens", q->kind == SERVE_CHAT, INT32_MAX, &n, f)) return false;
    if (n > m->length && m->gateway) n = m->length;
    if (n > m->length)
        return serve_refuse(f, 400, "max_tokens", "max_tokens is %lld, and at most %d tokens fit with the prompt",
                            (long long)n, m->length) ||
               serve_code(f, "integer_above_max_value");
    if (q->limited && q->how.max_new != n)
        return serve_refuse(f, 400, "max_completion_tokens",
                            "max_tokens is %d and max_completion_tokens is %lld; give only one of them", q->how.max_new,
                            (long long)n);
    q->how.max_new = (int)n;
    q->limited = true;
    return true;
}

static inline bool serve_read_temperature(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    (void)m;
    if (!serve_number(value, "temperature", 0, 100, &q->how.temperature, f)) return false;
    return q->how.temperature == 0 || q->how.temperature >= 0.01f ||
           serve_refuse(f, 400, "temperature", "temperature is neither 0 (greedy) nor in [0.01, 100]");
}

static inline bool serve_read_top_p(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    (void)m;
    return serve_number(value, "top_p", 0.001, 1, &q->how.top_p, f);
}

static inline bool serve_read_min_p(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    (void)m;
    return serve_number(value, "min_p", 0, 1, &q->how.min_p, f);
}

/* As in vLLM, -1 is all tokens, too. */
static inline bool serve_read_top_k(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    int64_t k;
    (void)m;
    if (!serve_integer(value, "top_k", -1, 1 << 22, &k, f)) return false;
    q->how.top_k = k < 0 ? 0 : (int)k;
    return true;
}

static inline bool serve_read_n(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    int64_t n;
    (void)m;
    if (!serve_integer(value, "n", 1, SERVE_SAMPLES, &n, f)) return false;
    q->samples = (int)n;
    return true;
}

/* A request's own texts come after those of the server, and are not words of special tokens. */
static inline bool serve_read_stop(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    const size_t n = json_is_string(value) ? 1 : json_array_size(value);
    if (!json_is_string(value) && !json_is_array(value))
        return serve_wrong_type(f, "stop", value, "a text or a list of texts");
    if (n > SERVE_STOPS || q->how.texts.count + (int)n > STOP_TEXTS_MAX)
        return serve_refuse(f, 400, "stop", "stop has %zu texts, expected at most %d", n, SERVE_STOPS) ||
               serve_code(f, "array_above_max_length");
    for (size_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_is_string(value) ? value : json_array_get(value, i));
        if (!text || !*text) return serve_refuse(f, 400, "stop", "stop has an entry that is not a text, or is empty");
        if (!m->text->present) return serve_refuse(f, 400, "stop", "stop: the model has no tokenizer");
        q->stop[q->stops] = xstrdup(text);
        q->how.texts.tokenizer = &m->text->tokenizer;
        q->how.texts.text[q->how.texts.count++] = q->stop[q->stops++];
    }
    return true;
}

static inline bool serve_read_seed(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    int64_t seed;
    (void)m;
    if (!serve_integer(value, "seed", INT64_MIN, INT64_MAX, &seed, f)) return false;
    q->seeded = true;
    q->seed = (uint64_t)seed;
    return true;
}

static inline bool serve_read_stream(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    (void)m;
    return serve_flag(value, "stream", &q->stream, f);
}

static inline bool serve_read_stream_options(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    const json_t *usage = json_object_get(value, "include_usage");
    (void)m;
    if (!json_is_object(value) || json_object_size(value) != (usage != NULL))
        return serve_refuse(f, 400, "stream_options", "stream_options is not an object with at most include_usage");
    if (!q->stream) return serve_refuse(f, 400, "stream_options", "stream_options is used only with stream");
    return !usage || json_is_null(usage) || serve_flag(usage, "stream_options", &q->usage, f);
}

static inline bool serve_read_token_ids(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    (void)m;
    return serve_flag(value, "return_token_ids", &q->token_ids, f);
}

/* The end user's name, which changes nothing by its definition. */
static inline bool serve_read_user(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    (void)q, (void)m;
    return json_is_string(value) || serve_wrong_type(f, "user", value, "a text");
}

/* ---- the fields of completions --------------------------------------------------------------------------------- */

static inline bool serve_read_logprobs(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    int64_t k;
    (void)m;
    if (!serve_integer(value, "logprobs", 0, SERVE_TOP, &k, f)) return false;
    q->top = (int)k;
    return true;
}

static inline bool serve_read_echo(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    (void)m;
    return serve_flag(value, "echo", &q->echo, f);
}

/* Reads a prompt of ids. */
static inline bool serve_read_ids(const ServeModel *m, const json_t *list, TokenList *ids, ServeFault *f) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *id = json_array_get(list, i);
        const json_int_t value = json_integer_value(id);
        if (!json_is_integer(id))
            return serve_refuse(f, 400, "prompt", "prompt: a list of token ids has %s at place %zu", serve_type(id), i);
        if (value < 0 || value >= m->vocab)
            return serve_refuse(f, 400, "prompt", "prompt: token %lld is outside the vocabulary of %d",
                                (long long)value, m->vocab);
        token_list_append(ids, (int32_t)value);
    }
    return ids->count || serve_refuse(f, 400, "prompt", "prompt: a list of token ids is empty");
}

/* Reads a prompt that is a text; an empty one starts a document. */
static inline bool serve_read_text(const ServeModel *m, const char *text, TokenList *ids, ServeFault *f) {
    Error e;
    const int how = TOKENIZER_SPECIALS | TOKENIZER_DOCUMENT | TOKENIZER_CONTINUES;
    if (!m->text->present)
        return serve_refuse(f, 400, "prompt", "prompt: the model has no tokenizer, so a prompt is a list of token ids");
    if (!tokenizer_encode(&m->text->tokenizer, text, strlen(text), how, ids, &e))
        return serve_refuse(f, 400, "prompt", "prompt: %s", e.text);
    if (!ids->count) token_list_append(ids, m->text->tokenizer.eos);
    return true;
}

static inline bool serve_read_prompt(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    const bool list = json_is_array(value) && !json_is_integer(json_array_get(value, 0));
    const size_t n = list ? json_array_size(value) : 1;
    if (!json_is_array(value) && !json_is_string(value))
        return serve_wrong_type(f, "prompt", value, "a text or a list");
    if (!n) return serve_refuse(f, 400, "prompt", "prompt is an empty list") || serve_code(f, "empty_array");
    if (n > SERVE_SAMPLES)
        return serve_refuse(f, 400, "prompt", "prompt has %zu prompts, at most %d", n, SERVE_SAMPLES) ||
               serve_code(f, "array_above_max_length");
    q->prompt = (TokenList *)xcalloc(n, sizeof *q->prompt);
    q->text = (char **)xcalloc(n, sizeof *q->text);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = list ? json_array_get(value, i) : value;
        const int at = q->prompts++;
        if (json_is_string(one)) {
            q->text[at] = xstrdup(json_string_value(one));
            if (!serve_read_text(m, q->text[at], &q->prompt[at], f)) return false;
        } else if (json_is_array(one)) {
            if (!serve_read_ids(m, one, &q->prompt[at], f)) return false;
        } else
            return serve_refuse(f, 400, "prompt", "prompt: prompt %zu is %s, expected a text or a list of token ids", i,
                                serve_type(one));
    }
    return true;
}

/* ---- the fields of chats --------------------------------------------------------------------------------------- */

static inline bool serve_read_chat_logprobs(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    bool on = false;
    (void)m;
    if (!serve_flag(value, "logprobs", &on, f)) return false;
    q->top = on ? 0 : -1;
    return true;
}

static inline bool serve_read_top_logprobs(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    int64_t k;
    (void)m;
    if (!serve_integer(value, "top_logprobs", 0, SERVE_TOP_CHAT, &k, f)) return false;
    if (q->top < 0) return serve_refuse(f, 400, "top_logprobs", "top_logprobs is used only with logprobs");
    q->top = (int)k;
    return true;
}

static inline bool serve_read_tool_choice(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    const char *choice = json_string_value(value);
    (void)m;
    q->no_calls = choice && !strcmp(choice, "none");
    return q->no_calls || (choice && !strcmp(choice, "auto")) ||
           serve_refuse(f, 400, "tool_choice", "tool_choice must be auto or none");
}

/* Whether the model's template can show tools. */
static inline bool serve_shows_tools(const ServeModel *m) {
    return m->text->present && m->text->chat.model && strstr(m->text->chat.spec, "tools");
}

static inline bool serve_read_tools(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    if (!json_is_array(value)) return serve_wrong_type(f, "tools", value, "a list");
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *tool = json_array_get(value, i);
        const char *type = json_string_value(json_object_get(tool, "type"));
        if (!type || strcmp(type, "function") ||
            !json_is_string(json_object_get(json_object_get(tool, "function"), "name")))
            return serve_refuse(f, 400, "tools",
                                "tools: tool %zu is not {\"type\": \"function\", \"function\": {\"name\": ...}}", i);
    }
    if (!json_array_size(value) || q->no_calls) return true;
    if (!m->has_format || !serve_shows_tools(m))
        return serve_refuse(f, 400, "tools", "tools: this model's chat template cannot show tools%s",
                            m->has_format ? "" : ", and its format of calls is not known (--tool-format)");
    q->tools = json_incref((json_t *)value);
    q->calls = true;
    return true;
}

/* The content of message i as a text, to be freed; NULL: refused. A list of parts of type text is joined. */
static inline char *serve_content(const json_t *message, size_t i, ServeFault *f) {
    const json_t *content = json_object_get(message, "content");
    const bool calls = json_array_size(json_object_get(message, "tool_calls")) > 0;
    TextBuffer text = {0};
    text_clear(&text);
    if (json_is_string(content)) text_string(&text, json_string_value(content));
    else if (!content || json_is_null(content)) {
        if (calls) return text.text;
        serve_refuse(f, 400, "messages", "messages: message %zu has no content", i);
        goto refused;
    } else if (!json_is_array(content)) {
        serve_refuse(f, 400, "messages", "messages: the content of message %zu is %s", i, serve_type(content));
        goto refused;
    }
    for (size_t k = 0; k < json_array_size(content); k++) {
        const json_t *part = json_array_get(content, k);
        const char *type = json_string_value(json_object_get(part, "type"));
        const char *words = json_string_value(json_object_get(part, "text"));
        if (!type || strcmp(type, "text") || !words) {
            serve_refuse(f, 400, "messages",
                         "messages: part %zu of message %zu is not {\"type\": \"text\", \"text\": ...}", k, i);
            goto refused;
        }
        text_string(&text, words);
    }
    return text.text;
refused:
    text_free(&text);
    return NULL;
}

/* The calls of a message with their arguments as objects, as templates expect them; NULL: refused. */
static inline json_t *serve_message_calls(const json_t *calls, size_t i, ServeFault *f) {
    json_t *list = json_array();
    for (size_t k = 0; k < json_array_size(calls); k++) {
        const json_t *call = json_array_get(calls, k), *function = json_object_get(call, "function");
        const char *name = json_string_value(json_object_get(function, "name"));
        json_t *arguments = json_object_get(function, "arguments");
        json_t *object =
            json_is_string(arguments) ? json_loads(json_string_value(arguments), 0, NULL) : json_incref(arguments);
        if (!name || !json_is_object(object)) {
            json_decref(object), json_decref(list);
            serve_refuse(
                f, 400, "messages",
                "messages: call %zu of message %zu has no function with a name and arguments, an object as JSON", k, i);
            return NULL;
        }
        json_t *read =
            json_pack("{s:s,s:{s:s,s:o}}", "type", "function", "function", "name", name, "arguments", object);
        json_t *id = json_object_get(call, "id");
        if (id) json_object_set(read, "id", id);
        json_array_append_new(list, read);
    }
    return list;
}

/* Reads message i to the form of a conversation (jinja_chat.h); NULL: refused. */
static inline json_t *serve_message(const json_t *message, size_t i, ServeFault *f) {
    static const char *const known[] = {"role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content"};
    const char *role = json_string_value(json_object_get(message, "role")), *key;
    json_t *value, *calls = json_object_get(message, "tool_calls");
    if (!role || option_choice_index("system|developer|user|assistant|tool", role) < 0)
        return serve_refuse(f, 400, "messages",
                            "messages: message %zu has no role system, developer, user, assistant or tool", i),
               NULL;
    json_object_foreach((json_t *)message, key, value) {
        bool found = json_is_null(value);
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) found = found || !strcmp(key, known[k]);
        if (!found)
            return serve_refuse(f, 400, "messages", "messages: the field '%.60s' of message %zu is not supported", key,
                                i),
                   NULL;
    }
    if (calls && !json_is_null(calls) && (!json_is_array(calls) || strcmp(role, "assistant")))
        return serve_refuse(f, 400, "messages", "messages: tool_calls of message %zu is not a list of the assistant's",
                            i),
               NULL;
    char *content = serve_content(message, i, f);
    if (!content) return NULL;
    json_t *said = json_copy((json_t *)message);
    json_object_set_new(said, "role", json_string(strcmp(role, "developer") ? role : "system"));
    json_object_set_new(said, "content", json_string(content));
    free(content);
    json_t *list = json_array_size(calls) ? serve_message_calls(calls, i, f) : NULL;
    if (json_array_size(calls) && !list) {
        json_decref(said);
        return NULL;
    }
    if (list) json_object_set_new(said, "tool_calls", list);
    else json_object_del(said, "tool_calls");
    return said;
}

/* Refuses the fields of message i that a template with sections has no place for. */
static inline bool serve_section_fields(const json_t *message, bool tool, size_t i, ServeFault *f) {
    static const char *const names[] = {"reasoning_content", "name"};
    for (int k = 0; k < (tool ? 1 : 2); k++) { /* the result of a tool may be named, but is written without its name */
        const json_t *value = json_object_get(message, names[k]);
        const bool empty = json_is_string(value) && !json_string_length(value);
        if (value && !json_is_null(value) && !empty)
            return serve_refuse(f, 400, "messages",
                                "messages: the field '%s' of message %zu has no place in this chat template", names[k],
                                i);
    }
    return true;
}

/* Appends the results of tools that begin at message i, as text. Returns the place of the message after them. */
static inline size_t serve_results(const ServeModel *m, const json_t *messages, size_t i, json_t *plain) {
    const size_t n = json_array_size(messages);
    const char **result = (const char **)xcalloc(n, sizeof *result);
    int count = 0;
    for (; i < n; i++) {
        const json_t *one = json_array_get(messages, i);
        if (strcmp(json_string_value(json_object_get(one, "role")), "tool") != 0) break;
        result[count++] = json_string_value(json_object_get(one, "content"));
    }
    json_t *list = tool_format_messages(&m->format, &m->text->chat, NULL, result, count);
    json_array_extend(plain, list);
    json_decref(list);
    free(result);
    return i;
}

/* Appends the messages of a conversation for a template with sections, to which calls and results are text. */
static inline bool serve_sections(const ServeModel *m, json_t *messages, json_t *plain, ServeFault *f) {
    const size_t n = json_array_size(messages);
    for (size_t i = 0; i < n;) {
        json_t *message = json_array_get(messages, i);
        const char *role = json_string_value(json_object_get(message, "role"));
        json_t *calls = json_object_get(message, "tool_calls");
        const bool tool = !strcmp(role, "tool");
        if ((calls || tool) && !m->has_format)
            return serve_refuse(f, 400, "messages",
                                "messages: calls and results need --tool-format with this chat template");
        if (!serve_section_fields(message, tool, i, f)) return false;
        if (tool) {
            i = serve_results(m, messages, i, plain);
            continue;
        }
        TextBuffer text = {0};
        text_string(&text, json_string_value(json_object_get(message, "content")));
        for (size_t k = 0; k < json_array_size(calls); k++) {
            json_t *function = json_object_get(json_array_get(calls, k), "function");
            if (text.length) text_string(&text, "\n");
            tool_format_call(&m->format, json_string_value(json_object_get(function, "name")),
                             json_object_get(function, "arguments"), &text);
        }
        json_array_append_new(plain, json_pack("{s:s,s:s}", "role", role, "content", text.text));
        text_free(&text);
        i++;
    }
    return true;
}

/* Encodes what follows an assistant's turn that ended with the token that ends turns: the rest of what the template writes
 * after it, then `messages`, up to the assistant's next answer. Returns false, with nothing in *ids, if the template cannot
 * write them there. */
static inline bool serve_encode_answer(const ServeModel *m, json_t *messages, TokenList *ids) {
    const ModelText *t = m->text;
    Error e;
    ServeFault f;
    json_t *plain = t->chat.model ? json_incref(messages) : json_array();
    const bool ok = (t->chat.model || serve_sections(m, messages, plain, &f)) &&
                    chat_encode_answer(&t->chat, &t->tokenizer, plain, ids, &e);
    json_decref(plain);
    if (!ok) ids->count = 0;
    return ok;
}

/* Encodes the messages, up to the assistant's answer. */
static inline bool serve_encode(const ServeRequest *q, const ServeModel *m, json_t *messages, TokenList *ids,
                                ServeFault *f) {
    const ModelText *t = m->text;
    Error e;
    bool ok;
    if (t->chat.model) {
        json_t *conversation = json_pack("{s:O}", "messages", messages);
        if (q->tools) json_object_set(conversation, "tools", q->tools);
        ok = chat_encode_conversation(&t->chat, &t->tokenizer, conversation, true, false, ids, NULL, NULL, &e);
        json_decref(conversation);
        return ok || serve_refuse(f, 400, "messages", "messages: %s", e.text);
    }
    json_t *plain = json_array();
    ok = serve_sections(m, messages, plain, f);
    if (ok) {
        const size_t n = json_array_size(plain);
        ChatMessage *list = (ChatMessage *)xcalloc(n, sizeof *list);
        for (size_t i = 0; i < n; i++)
            list[i] = (ChatMessage){json_string_value(json_object_get(json_array_get(plain, i), "role")),
                                    json_string_value(json_object_get(json_array_get(plain, i), "content"))};
        ok = chat_encode(&t->chat, &t->tokenizer, list, (int)n, true, ids, NULL, &e) ||
             serve_refuse(f, 400, "messages", "messages: %s", e.text);
        free(list);
    }
    json_decref(plain);
    return ok;
}

static inline bool serve_read_messages(ServeRequest *q, const ServeModel *m, const json_t *value, ServeFault *f) {
    if (!json_is_array(value) || !json_array_size(value))
        return serve_refuse(f, 400, "messages", "messages is not a list of at least one message") ||
               serve_code(f, json_is_array(value) ? "empty_array" : "invalid_type");
    if (!m->text->present)
        return serve_refuse(f, 400, "messages",
                            "messages: the model has no tokenizer; use /v1/completions with token ids");
    json_t *messages = json_array();
    bool ok = true;
    for (size_t i = 0; ok && i < json_array_size(value); i++) {
        json_t *message = serve_message(json_array_get(value, i), i, f);
        ok = message != NULL;
        if (ok) json_array_append_new(messages, message);
    }
    q->prompt = (TokenList *)xcalloc(1, sizeof *q->prompt);
    q->text = (char **)xcalloc(1, sizeof *q->text);
    q->prompts = 1;
    ok = ok && serve_encode(q, m, messages, &q->prompt[0], f);
    q->messages = messages;
    return ok && (q->prompt[0].count || serve_refuse(f, 400, "messages", "messages: the chat template writes nothing"));
}

/* ---- the whole ------------------------------------------------------------------------------------------------- */

/* In the order in which they are read: some depend on earlier ones. */
static const struct ServeField {
    const char *name;
    int kinds;
    ServeRead read;
} serve_fields[] = {
    {"model", SERVE_BOTH, serve_read_model},
    {"max_tokens", SERVE_BOTH, serve_read_max},
    {"max_completion_tokens", SERVE_CHAT, serve_read_max},
    {"temperature", SERVE_BOTH, serve_read_temperature},
    {"top_p", SERVE_BOTH, serve_read_top_p},
    {"top_k", SERVE_BOTH, serve_read_top_k},
    {"min_p", SERVE_BOTH, serve_read_min_p},
    {"n", SERVE_BOTH, serve_read_n},
    {"stop", SERVE_BOTH, serve_read_stop},
    {"seed", SERVE_BOTH, serve_read_seed},
    {"stream", SERVE_BOTH, serve_read_stream},
    {"stream_options", SERVE_BOTH, serve_read_stream_options},
    {"return_token_ids", SERVE_BOTH, serve_read_token_ids},
    {"user", SERVE_BOTH, serve_read_user},
    {"logprobs", SERVE_COMPLETION, serve_read_logprobs},
    {"echo", SERVE_COMPLETION, serve_read_echo},
    {"prompt", SERVE_COMPLETION, serve_read_prompt},
    {"logprobs", SERVE_CHAT, serve_read_chat_logprobs},
    {"top_logprobs", SERVE_CHAT, serve_read_top_logprobs},
    {"tool_choice", SERVE_CHAT, serve_read_tool_choice},
    {"tools", SERVE_CHAT, serve_read_tools},
    {"messages", SERVE_CHAT, serve_read_messages},
};

/* Fields that have no effect with these values, which clients send; other values are refused. */
static const struct ServeNeutral {
    const char *name;
    int kinds;
    const char *value;
} serve_neutral[] = {
    {"frequency_penalty", SERVE_BOTH, "0"},
    {"presence_penalty", SERVE_BOTH, "0"},
    {"repetition_penalty", SERVE_BOTH, "1"},
    {"logit_bias", SERVE_BOTH, "{}"},
    {"suffix", SERVE_COMPLETION, "\"\""},
    {"best_of", SERVE_COMPLETION, "1"},
    {"parallel_tool_calls", SERVE_CHAT, "true"},
    {"response_format", SERVE_CHAT, "{\"type\": \"text\"}"},
    {"store", SERVE_CHAT, "false"},
};

/* Whether a field that is not read has no effect. Sets *known to whether it has a value without effect. */
static inline bool serve_is_neutral(const ServeRequest *q, const char *key, const json_t *value, bool *known) {
    *known = false;
    for (size_t i = 0; i < sizeof serve_neutral / sizeof *serve_neutral; i++) {
        const struct ServeNeutral *n = &serve_neutral[i];
        if (!(n->kinds & q->kind) || strcmp(key, n->name)) continue;
        *known = true;
        json_t *neutral = json_loads(n->value, JSON_DECODE_ANY, NULL);
        const bool same = json_is_number(neutral)
                              ? json_is_number(value) && json_number_value(value) == json_number_value(neutral)
                              : json_equal(value, neutral);
        json_decref(neutral);
        return same;
    }
    return false;
}

/* Refuses the fields that nothing has read. */
static inline bool serve_unread(const ServeRequest *q, json_t *body, ServeFault *f) {
    const char *key;
    json_t *value;
    json_object_foreach(body, key, value) {
        bool found = json_is_null(value), known;
        for (size_t i = 0; i < sizeof serve_fields / sizeof *serve_fields; i++)
            found = found || (serve_fields[i].kinds & q->kind && !strcmp(key, serve_fields[i].name));
        if (found || serve_is_neutral(q, key, value, &known)) continue;
        return serve_refuse(f, 400, key, "the field '%.60s' is not supported%s", key,
                            known ? " with this value" : "") ||
               serve_code(f, known ? "unsupported_value" : "unknown_parameter");
    }
    return true;
}

/* The name of the field with the prompt. */
static inline const char *serve_prompt_name(const ServeRequest *q) {
    return q->kind == SERVE_CHAT ? "messages" : "prompt";
}

/* Refuses prompt i, with which a completion of `most` tokens does not fit. Clients know the code, or the first words. */
static inline bool serve_too_long(const ServeRequest *q, const ServeModel *m, int i, int64_t most, ServeFault *f) {
    const char *name = serve_prompt_name(q);
    const int64_t n = q->prompt[i].count;
    return serve_refuse(f, 400, name,
                        "this model's maximum context length is %d tokens, but prompt %d needs %lld (%lld in the %s, "
                        "%lld in the completion)",
                        m->length, i, (long long)(n + most), (long long)n, name, (long long)most) ||
           serve_code(f, "context_length_exceeded");
}

/* Checks what no field can check alone. */
static inline bool serve_check(ServeRequest *q, const ServeModel *m, ServeFault *f) {
    if (!q->prompts)
        return serve_refuse(f, 400, serve_prompt_name(q), "%s is required", serve_prompt_name(q)) ||
               serve_code(f, "missing_required_parameter");
    if (q->prompts * q->samples > SERVE_SAMPLES)
        return serve_refuse(f, 400, "n", "%d prompts with n %d are more than %d completions", q->prompts, q->samples,
                            SERVE_SAMPLES);
    int64_t listed = (int64_t)q->prompts * q->samples * q->how.max_new;
    for (int i = 0; q->echo && i < q->prompts; i++) listed += q->prompt[i].count;
    if (q->top >= 0 && listed * (1 + q->top) > SERVE_LOGPROBS)
        return serve_refuse(f, 400, "logprobs", "the answer would have up to %lld log-probabilities, at most %d",
                            (long long)(listed * (1 + q->top)), SERVE_LOGPROBS);
    if (!q->how.max_new && !q->echo) return serve_refuse(f, 400, "max_tokens", "max_tokens 0 is used only with echo");
    for (int i = 0; i < q->prompts && !m->gateway; i++) { /* gateway.h knows the room of a trajectory */
        const int64_t most = q->limited ? q->how.max_new : 1;
        if (q->prompt[i].count + most > m->length) return serve_too_long(q, m, i, most, f);
    }
    return true;
}

/* Parses n bytes of a body, which is one object. The caller owns the result; NULL: it is none, and *f says why. */
static inline json_t *serve_body(const char *text, size_t n, ServeFault *f) {
    json_error_t why;
    json_t *body = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (json_is_object(body)) return body;
    if (!body) serve_refuse(f, 400, "", "the body is not JSON: %.200s at byte %d", why.text, why.position);
    else serve_refuse(f, 400, "", "the body is %s, expected an object", serve_type(body));
    json_decref(body);
    return NULL;
}

/* Reads a request from its body. On failure *q is empty and *f says why. */
static inline bool serve_request(ServeRequest *q, const ServeModel *m, ServeKind kind, json_t *body, ServeFault *f) {
    *q = (ServeRequest){.kind = kind, .samples = 1, .how = m->standard, .top = -1};
    if (kind == SERVE_COMPLETION) q->how.max_new = SERVE_NEW;
    bool ok = serve_unread(q, body, f);
    for (size_t i = 0; ok && i < sizeof serve_fields / sizeof *serve_fields; i++) {
        const json_t *value = json_object_get(body, serve_fields[i].name);
        if (serve_fields[i].kinds & kind && value && !json_is_null(value)) ok = serve_fields[i].read(q, m, value, f);
    }
    ok = ok && serve_check(q, m, f);
    if (!ok) serve_request_free(q);
    return ok;
}

#endif
