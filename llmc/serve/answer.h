/* answer.h - answers in the shapes of OpenAI's API: whole, and in pieces of server-sent events.
 *
 * The pieces of a choice join to the text, tokens and log-probabilities of the whole answer. Bytes that may become part of
 * a character, of a stop text or of a tool call wait for those after them.
 *
 * Log-probabilities, and token_ids of return_token_ids, list every token that was drawn, the one that ended the completion
 * as well. A token whose bytes are no text is written as bytes:\x80, as OpenAI does.
 *
 *     json_t *answer = serve_answer(&server, job);                  // of a job that is over
 *     char *text = serve_dump(answer);
 *
 *     ServePieces p;
 *     TextBuffer events = {0};
 *     serve_pieces_open(&p, &server, job);
 *     while (!serve_pieces_next(&p, &events)) serve_job_wait(&server, job);      // with the engine's lock
 *     serve_pieces_close(&p);
 */
#ifndef LLMC_SERVE_ANSWER_H
#define LLMC_SERVE_ANSWER_H

#include "../base/error.h"        /* checked_object, xcalloc */
#include "../base/json_text.h"    /* json_utf8 */
#include "../base/text.h"         /* TextBuffer, text_append, text_free, text_string, ... */
#include "../model/model_text.h"  /* model_text_decode_bytes */
#include "../rollout/rollout.h"   /* Completion, sampling_is_stop */
#include "../rollout/stop_text.h" /* stop_text_cut, stop_text_longest, stop_text_match */
#include "../text/text_stream.h"  /* TextStream, text_stream_cut, text_stream_take */
#include "../text/tokenizer.h"    /* tokenizer_decode_more, tokenizer_decode */
#include "../tools/tool_format.h" /* ToolCalls, TOOL_LLAMA3, tool_calls_free, ToolFormat, ... */
#include "engine.h"               /* ServeChoice, ServeJob, ServeEngine, ServeScore, ... */
#include "request.h"              /* ServeModel, ServeRequest, SERVE_CHAT, ServeFault */
#include <jansson.h>
#include <time.h>

/* A JSON text with numbers of float32; to be freed. */
static inline char *serve_dump(const json_t *value) {
    return (char *)checked_object(json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(9)), "a JSON text");
}

/* {"error": ...} of a fault, with OpenAI's types: a wrong key is an invalid request, and "requests" is what a limit counts. */
static inline json_t *serve_error(const ServeFault *f) {
    const char *type = f->status == 429 ? "requests" : f->status >= 500 ? "server_error" : "invalid_request_error";
    return json_pack("{s:{s:o,s:s,s:o,s:s?}}", "error", "message", json_utf8(f->e.text, strlen(f->e.text)), "type",
                     type, "param", *f->param ? json_utf8(f->param, strlen(f->param)) : json_null(), "code", f->code);
}

/* ---- tokens ---------------------------------------------------------------------------------------------------- */

/* The token's bytes, of which there are *n; the id of a model without a tokenizer. */
static inline char *serve_token(const ServeModel *m, int32_t id, size_t *n) {
    TextBuffer text = {0};
    bool started = true;
    text_clear(&text);
    if (m->text->present) tokenizer_decode_more(&m->text->tokenizer, &id, 1, true, &started, &text);
    else text_format(&text, "%d", id);
    *n = text.length;
    return text.text;
}

/* The token as a JSON string. */
static inline json_t *serve_token_name(const ServeModel *m, int32_t id) {
    size_t n;
    char *bytes = serve_token(m, id, &n);
    json_t *name =
        memchr(bytes, 0, n) ? NULL : json_stringn(bytes, n); /* some readers refuse NULs in names of fields */
    if (!name) {
        TextBuffer text = {0};
        text_string(&text, "bytes:");
        for (size_t i = 0; i < n; i++) text_format(&text, "\\x%02x", (unsigned char)bytes[i]);
        name = json_string(text.text);
        text_free(&text);
    }
    free(bytes);
    return name;
}

static inline json_t *serve_ids(const int32_t *ids, int32_t n) {
    json_t *list = json_array();
    for (int32_t i = 0; i < n; i++) json_array_append_new(list, json_integer(ids[i]));
    return list;
}

/* A log-probability as JSON, which has no infinity. */
static inline json_t *serve_number_of(float logp) { return json_real(logp > -9999 ? logp : -9999); }

/* Log-probabilities of n tokens of a completion's list, in the legacy shape. offset: characters of the text before them; it
 * is moved behind them. top: (n, k). first_null: the first token has none. */
static inline void serve_legacy_add(json_t *lists, const ServeModel *m, const int32_t *ids, const float *logp,
                                    const ServeTop *top, int32_t n, int k, bool first_null, size_t *offset) {
    json_t *tokens = json_object_get(lists, "tokens"), *logps = json_object_get(lists, "token_logprobs");
    json_t *tops = json_object_get(lists, "top_logprobs"), *offsets = json_object_get(lists, "text_offset");
    for (int32_t i = 0; i < n; i++) {
        const bool none = first_null && !i;
        json_t *name = serve_token_name(m, ids[i]), *best = none || !k ? json_null() : json_object();
        for (int j = 0; !none && j < k && top[i * k + j].id >= 0; j++) {
            json_t *other = serve_token_name(m, top[i * k + j].id);
            if (!json_object_getn(best, json_string_value(other), json_string_length(other)))
                json_object_setn_new(best, json_string_value(other), json_string_length(other),
                                     serve_number_of(top[i * k + j].logp));
            json_decref(other);
        }
        if (!none && k && !json_object_getn(best, json_string_value(name), json_string_length(name)))
            json_object_setn_new(best, json_string_value(name), json_string_length(name), serve_number_of(logp[i]));
        json_array_append_new(offsets, json_integer((json_int_t)*offset));
        size_t bytes;
        char *text = serve_token(m, ids[i], &bytes);
        for (size_t b = 0; b < bytes; b++) *offset += ((unsigned char)text[b] & 0xC0) != 0x80;
        free(text);
        json_array_append_new(tokens, name);
        json_array_append_new(logps, none ? json_null() : serve_number_of(logp[i]));
        json_array_append_new(tops, best);
    }
}

static inline json_t *serve_legacy(void) {
    return json_pack("{s:[],s:[],s:[],s:[]}", "tokens", "token_logprobs", "top_logprobs", "text_offset");
}

/* An entry of a chat's log-probabilities, without its alternatives. */
static inline json_t *serve_chat_entry(const ServeModel *m, int32_t id, float logp) {
    size_t n;
    char *text = serve_token(m, id, &n);
    json_t *bytes = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(bytes, json_integer((unsigned char)text[i]));
    free(text);
    return json_pack("{s:o,s:o,s:o}", "token", serve_token_name(m, id), "logprob", serve_number_of(logp), "bytes",
                     bytes);
}

/* Log-probabilities of tokens [first, first + n) of a chat's choice. */
static inline json_t *serve_chat_logprobs(const ServeModel *m, const ServeChoice *a, int32_t first, int32_t n) {
    json_t *content = json_array();
    const int k = a->job->request.top;
    for (int32_t i = first; i < first + n; i++) {
        json_t *entry = serve_chat_entry(m, a->c.tokens[i], a->c.logp[i]), *tops = json_array();
        for (int j = 0; j < k && a->top[i * k + j].id >= 0; j++)
            json_array_append_new(tops, serve_chat_entry(m, a->top[i * k + j].id, a->top[i * k + j].logp));
        json_object_set_new(entry, "top_logprobs", tops);
        json_array_append_new(content, entry);
    }
    return json_pack("{s:o}", "content", content);
}

/* ---- the text of a choice -------------------------------------------------------------------------------------- */

/* The tokens of a choice that are text: without the token that ended it. */
static inline int32_t serve_text_tokens(const ServeChoice *a) {
    const Completion *c = &a->c;
    return c->count - (c->finished && c->count && sampling_is_stop(&a->job->request.how, c->tokens[c->count - 1]));
}

/* The bytes of a choice that is over, up to the stop text that ended it; to be freed. */
static inline char *serve_said(const ServeModel *m, const ServeChoice *a, size_t *length) {
    const Completion *c = &a->c;
    const int32_t n = serve_text_tokens(a);
    const size_t cut = c->finished && n == c->count ? stop_text_cut(&a->job->request.how.texts, c->tokens, n) : 0;
    char *said = model_text_decode_bytes(m->text, c->tokens, n, false, length);
    *length -= cut < *length ? cut : *length;
    said[*length] = 0;
    return said;
}

/* The calls of a choice's text, to be freed with tool_calls_free(); false: it has none that can be read. */
static inline bool serve_calls(const ServeModel *m, const ServeChoice *a, const char *said, size_t length,
                               ToolCalls *calls) {
    *calls = (ToolCalls){0};
    if (!a->job->request.calls || !a->c.finished) return false;
    tool_format_read(&m->format, said, length, calls);
    bool ok = calls->count && !calls->malformed;
    for (int i = 0; i < calls->count; i++) ok = ok && !calls->call[i].error && calls->call[i].arguments;
    return ok;
}

/* A job's name in ids. */
static inline const char *serve_job_id(const ServeJob *job, char text[48]) {
    snprintf(text, 48, "%s-%llx", job->request.kind == SERVE_CHAT ? "chatcmpl" : "cmpl",
             (unsigned long long)job->request.number);
    return text;
}

/* The list tool_calls. index: the entries carry their place, as in pieces. */
static inline json_t *serve_call_list(const ServeChoice *a, const ToolCalls *calls, bool index) {
    json_t *list = json_array();
    for (int i = 0; i < calls->count; i++) {
        char id[64];
        snprintf(id, sizeof id, "call_%llx_%d_%d", (unsigned long long)a->job->request.number,
                 (int)(a - a->job->choice), i);
        char *arguments = json_dumps(calls->call[i].arguments, JSON_COMPACT);
        json_t *call = json_pack("{s:s,s:s,s:{s:s,s:s}}", "id", id, "type", "function", "function", "name",
                                 calls->call[i].name, "arguments", arguments);
        if (index) json_object_set_new(call, "index", json_integer(i));
        json_array_append_new(list, call);
        free(arguments);
    }
    return list;
}

static inline const char *serve_finish(const ServeChoice *a, bool calls) {
    return calls ? "tool_calls" : a->c.finished ? "stop" : "length";
}

/* The stop text that ended a choice, under vLLM's name stop_reason: a client cannot tell it from the model's end token by
 * finish_reason. null: something else ended it, or nothing. */
static inline json_t *serve_stop_reason(const ServeChoice *a) {
    const Completion *c = &a->c;
    const char *text = NULL;
    if (c->finished && serve_text_tokens(a) == c->count)
        stop_text_match(&a->job->request.how.texts, c->tokens, c->count, &text);
    return text ? json_utf8(text, strlen(text)) : json_null();
}

/* The text of a prompt that is echoed. */
static inline json_t *serve_prompt_text(const ServeModel *m, const ServeRequest *q, int prompt) {
    if (q->text[prompt]) return json_string(q->text[prompt]);
    TextBuffer text = {0};
    text_append(&text, "", 0);
    const TokenList *ids = &q->prompt[prompt];
    if (m->text->present) tokenizer_decode(&m->text->tokenizer, ids->ids, ids->count, true, &text);
    json_t *value = json_utf8(text.text, text.length);
    text_free(&text);
    return value;
}

/* ---- whole answers --------------------------------------------------------------------------------------------- */

static inline json_t *serve_usage(const ServeJob *job) {
    json_int_t prompt = 0, drawn = 0, cached = 0;
    for (int i = 0; i < job->request.prompts; i++) prompt += job->request.prompt[i].count;
    for (int i = 0; i < job->choices; i++) {
        drawn += job->choice[i].c.count;
        if (i % job->request.samples == 0) cached += job->choice[i].cached; /* as the prompt, once */
    }
    return json_pack("{s:I,s:I,s:I,s:{s:I}}", "prompt_tokens", prompt, "completion_tokens", drawn, "total_tokens",
                     prompt + drawn, "prompt_tokens_details", "cached_tokens", cached);
}

/* The head of an answer or of a piece. */
static inline json_t *serve_head(const ServeEngine *x, const ServeJob *job, const char *object, time_t created) {
    char id[48];
    return json_pack("{s:s,s:s,s:I,s:s,s:[]}", "id", serve_job_id(job, id), "object", object, "created",
                     (json_int_t)created, "model", x->serve->name, "choices");
}

/* The legacy log-probabilities of a choice's tokens [first, first + n), after those of its prompt if `prompt` is set;
 * null: not asked for. */
static inline json_t *serve_completion_logprobs(const ServeModel *m, const ServeChoice *a, bool prompt, int32_t first,
                                                int32_t n, size_t *offset) {
    const ServeRequest *q = &a->job->request;
    if (q->top < 0) return json_null();
    json_t *lists = serve_legacy();
    if (prompt) {
        const TokenList *ids = &q->prompt[a->prompt];
        const ServeScore *score = &a->job->score[a->prompt];
        serve_legacy_add(lists, m, ids->ids, score->logp, score->top, ids->count, q->top, true, offset);
    }
    serve_legacy_add(lists, m, a->c.tokens + first, a->c.logp + first, a->top ? a->top + first * q->top : NULL, n,
                     q->top, false, offset);
    return lists;
}

static inline json_t *serve_completion_choice(const ServeModel *m, const ServeChoice *a, int index) {
    const ServeRequest *q = &a->job->request;
    size_t length, offset = 0;
    char *said = serve_said(m, a, &length);
    json_t *text = json_utf8(said, length);
    if (q->echo) {
        json_t *before = serve_prompt_text(m, q, a->prompt);
        TextBuffer all = {0};
        text_append(&all, json_string_value(before), json_string_length(before));
        text_append(&all, json_string_value(text), json_string_length(text));
        json_decref(text), json_decref(before);
        text = json_stringn(all.text, all.length);
        text_free(&all);
    }
    json_t *choice = json_pack("{s:i,s:o,s:o,s:s,s:o}", "index", index, "text", text, "logprobs",
                               serve_completion_logprobs(m, a, q->echo, 0, a->c.count, &offset), "finish_reason",
                               serve_finish(a, false), "stop_reason", serve_stop_reason(a));
    if (q->token_ids) {
        json_object_set_new(choice, "prompt_token_ids",
                            serve_ids(q->prompt[a->prompt].ids, q->prompt[a->prompt].count));
        json_object_set_new(choice, "token_ids", serve_ids(a->c.tokens, a->c.count));
    }
    free(said);
    return choice;
}

static inline json_t *serve_chat_choice(const ServeModel *m, const ServeChoice *a, int index) {
    const ServeRequest *q = &a->job->request;
    ToolCalls calls;
    size_t length;
    char *said = serve_said(m, a, &length);
    const bool any = serve_calls(m, a, said, length, &calls);
    const size_t shown = any ? calls.before : length;
    json_t *message =
        json_pack("{s:s,s:o}", "role", "assistant", "content", any && !shown ? json_null() : json_utf8(said, shown));
    if (any) json_object_set_new(message, "tool_calls", serve_call_list(a, &calls, false));
    json_t *choice = json_pack("{s:i,s:o,s:o,s:s,s:o}", "index", index, "message", message, "logprobs",
                               q->top < 0 ? json_null() : serve_chat_logprobs(m, a, 0, a->c.count), "finish_reason",
                               serve_finish(a, any), "stop_reason", serve_stop_reason(a));
    if (q->token_ids) json_object_set_new(choice, "token_ids", serve_ids(a->c.tokens, a->c.count));
    tool_calls_free(&calls);
    free(said);
    return choice;
}

/* The answer of a job that is over. */
static inline json_t *serve_answer(const ServeEngine *x, const ServeJob *job) {
    const ServeRequest *q = &job->request;
    const bool chat = q->kind == SERVE_CHAT;
    json_t *answer = serve_head(x, job, chat ? "chat.completion" : "text_completion", time(NULL));
    json_t *choices = json_object_get(answer, "choices");
    for (int i = 0; i < job->choices; i++)
        json_array_append_new(choices, chat ? serve_chat_choice(x->serve, &job->choice[i], i)
                                            : serve_completion_choice(x->serve, &job->choice[i], i));
    json_object_set_new(answer, "usage", serve_usage(job));
    if (chat && q->token_ids)
        json_object_set_new(answer, "prompt_token_ids", serve_ids(q->prompt[0].ids, q->prompt[0].count));
    return answer;
}

/* ---- pieces ---------------------------------------------------------------------------------------------------- */

/* A choice as it is handed on. */
typedef struct ServePiece {
    int32_t read; /* tokens */
    bool begun, over;
    size_t offset; /* characters of the text before the next token */
    TextStream text;
    TextBuffer kept; /* text that may be part of a call */
    size_t sent;     /* bytes of the text that were handed on */
} ServePiece;

typedef struct ServePieces {
    ServeEngine *x;
    ServeJob *job;
    time_t created;
    ServePiece *piece; /* (choices) */
    bool done;
} ServePieces;

static inline void serve_pieces_open(ServePieces *p, ServeEngine *x, ServeJob *job) {
    *p = (ServePieces){.x = x, .job = job, .created = time(NULL)};
    p->piece = (ServePiece *)xcalloc((size_t)job->choices, sizeof *p->piece);
    const size_t longest = stop_text_longest(&job->request.how.texts);
    for (int i = 0; i < job->choices; i++) p->piece[i].text.held = longest ? longest - 1 : 0;
}

static inline void serve_pieces_close(ServePieces *p) {
    for (int i = 0; i < p->job->choices; i++) {
        text_free(&p->piece[i].text.waiting);
        text_free(&p->piece[i].kept);
    }
    free(p->piece);
    *p = (ServePieces){0};
}

/* Appends an event. */
static inline void serve_event(TextBuffer *out, json_t *event) {
    char *text = serve_dump(event);
    text_string(out, "data: ");
    text_string(out, text);
    text_string(out, "\n\n");
    free(text);
    json_decref(event);
}

/* The bytes of kept[0..n) that are not part of a call, nor may become one. */
static inline size_t serve_safe(const ToolFormat *f, const char *kept, size_t n) {
    if (f->kind == TOOL_LLAMA3) {
        const size_t at = tool_skip_space(kept, n, 0);
        return at == n || kept[at] == '{' ? 0 : n;
    }
    const char *found = (const char *)memmem(kept, n, f->open, strlen(f->open));
    if (found) return (size_t)(found - kept);
    for (size_t k = strlen(f->open) - 1; k > 0; k--)
        if (k <= n && !memcmp(kept + n - k, f->open, k)) return n - k;
    return n;
}

/* Reads the new tokens of a choice. Appends its new text to `text`. */
static inline void serve_piece_text(const ServeModel *m, const ServeChoice *a, ServePiece *p, TextBuffer *text) {
    const Completion *c = &a->c;
    const int32_t n = a->over ? serve_text_tokens(a) : c->count;
    TextBuffer *to = a->job->request.calls ? &p->kept : text;
    if (m->text->present)
        tokenizer_decode_more(&m->text->tokenizer, c->tokens + p->read, n > p->read ? n - p->read : 0, false,
                              &p->text.started, &p->text.waiting);
    for (int32_t i = p->read; !m->text->present && i < n; i++)
        text_format(&p->text.waiting, i ? " %d" : "%d", c->tokens[i]);
    if (a->over && c->finished && n == c->count)
        text_stream_cut(&p->text, stop_text_cut(&a->job->request.how.texts, c->tokens, n));
    text_stream_take(&p->text, a->over, to);
    if (to == text || !to->length) return;
    const size_t safe =
        p->sent && m->format.kind == TOOL_LLAMA3 ? to->length : serve_safe(&m->format, to->text, to->length);
    text_append(text, to->text, safe);
    memmove(to->text, to->text + safe, to->length - safe);
    to->length -= safe;
    p->sent += safe;
}

/* Appends the event of a choice's new text, tokens and log-probabilities, if there are any. */
static inline void serve_piece_event(ServePieces *p, int i, TextBuffer *out) {
    const ServeModel *m = p->x->serve;
    const ServeChoice *a = &p->job->choice[i];
    const ServeRequest *q = &p->job->request;
    ServePiece *piece = &p->piece[i];
    const bool chat = q->kind == SERVE_CHAT, first = !piece->begun;
    const int32_t from = piece->read, n = a->c.count - from;
    TextBuffer text = {0};
    text_append(&text, "", 0);
    if (first && q->echo) {
        json_t *before = serve_prompt_text(m, q, a->prompt);
        text_append(&text, json_string_value(before), json_string_length(before));
        json_decref(before);
    }
    serve_piece_text(m, a, piece, &text);
    piece->read = a->c.count;
    if (text.length || (n && (q->top >= 0 || q->token_ids)) || (first && chat) || (first && q->echo)) {
        piece->begun = true;
        json_t *event = serve_head(p->x, p->job, chat ? "chat.completion.chunk" : "text_completion", p->created);
        json_t *said = json_stringn(text.text, text.length), *choice;
        if (chat) {
            json_t *delta = json_pack("{s:o}", "content", said);
            if (first) json_object_set_new(delta, "role", json_string("assistant"));
            choice = json_pack("{s:i,s:o,s:o,s:n,s:n}", "index", i, "delta", delta, "logprobs",
                               q->top < 0 ? json_null() : serve_chat_logprobs(m, a, from, n), "finish_reason",
                               "stop_reason");
        } else
            choice = json_pack("{s:i,s:o,s:o,s:n,s:n}", "index", i, "text", said, "logprobs",
                               serve_completion_logprobs(m, a, first && q->echo, from, n, &piece->offset),
                               "finish_reason", "stop_reason");
        if (q->token_ids) {
            json_object_set_new(choice, "token_ids", serve_ids(a->c.tokens + from, n));
            if (first)
                json_object_set_new(chat ? event : choice, "prompt_token_ids",
                                    serve_ids(q->prompt[a->prompt].ids, q->prompt[a->prompt].count));
        }
        json_array_append_new(json_object_get(event, "choices"), choice);
        serve_event(out, event);
    }
    text_free(&text);
}

/* Appends the last event of a choice that is over, with its calls. */
static inline void serve_piece_end(ServePieces *p, int i, TextBuffer *out) {
    const ServeModel *m = p->x->serve;
    const ServeChoice *a = &p->job->choice[i];
    const bool chat = p->job->request.kind == SERVE_CHAT;
    ServePiece *piece = &p->piece[i];
    ToolCalls calls;
    size_t length;
    char *said = serve_said(m, a, &length);
    const bool any = serve_calls(m, a, said, length, &calls);
    json_t *event = serve_head(p->x, p->job, chat ? "chat.completion.chunk" : "text_completion", p->created), *choice;
    if (chat) {
        json_t *delta = json_object();
        if (any) json_object_set_new(delta, "tool_calls", serve_call_list(a, &calls, true));
        const size_t rest = any ? (calls.before > piece->sent ? calls.before - piece->sent : 0) : piece->kept.length;
        if (rest && rest <= piece->kept.length)
            json_object_set_new(delta, "content", json_utf8(piece->kept.text, rest));
        choice = json_pack("{s:i,s:o,s:n,s:s,s:o}", "index", i, "delta", delta, "logprobs", "finish_reason",
                           serve_finish(a, any), "stop_reason", serve_stop_reason(a));
    } else
        choice = json_pack("{s:i,s:s,s:n,s:s,s:o}", "index", i, "text", "", "logprobs", "finish_reason",
                           serve_finish(a, false), "stop_reason", serve_stop_reason(a));
    json_array_append_new(json_object_get(event, "choices"), choice);
    serve_event(out, event);
    tool_calls_free(&calls);
    free(said);
    piece->over = true;
}

/* Appends the events that are new. Returns whether the stream is complete. Called with the engine's lock. */
static inline bool serve_pieces_next(ServePieces *p, TextBuffer *out) {
    bool all = true;
    if (p->done) return true;
    if (p->job->failed) {
        ServeFault f = {.status = 500, .e = p->job->e};
        serve_event(out, serve_error(&f));
        return p->done = true;
    }
    for (int i = 0; i < p->job->choices; i++) {
        const ServeChoice *a = &p->job->choice[i];
        ServePiece *piece = &p->piece[i];
        const bool scored = !p->job->score || p->job->score[a->prompt].over;
        if (!piece->over && scored && (a->c.count > piece->read || a->over)) {
            serve_piece_event(p, i, out);
            if (a->over) serve_piece_end(p, i, out);
        }
        all = all && piece->over;
    }
    if (!all) return false;
    if (p->job->request.usage) {
        json_t *event = serve_head(
            p->x, p->job, p->job->request.kind == SERVE_CHAT ? "chat.completion.chunk" : "text_completion", p->created);
        json_object_set_new(event, "usage", serve_usage(p->job));
        serve_event(out, event);
    }
    text_string(out, "data: [DONE]\n\n");
    return p->done = true;
}

#endif
