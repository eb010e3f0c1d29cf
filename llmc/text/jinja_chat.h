/* jinja_chat.h - conversations in a model's own chat template: its files, rendering, encoding, and the spans that are
 * trained.
 *
 * A conversation is a JSON object {messages, tools, documents}; messages are {role, content, tool_calls, ...} as in
 * transformers. Before rendering, keys of a message whose value is null are dropped, and a reasoning in
 * reasoning_content, thinking or reasoning also gets the names reasoning_content and thinking.
 *
 * A template is stored in shards and checkpoints with the values that it needs, as a comment before it:
 *
 *   {#llmc {"date":"2026-03-05","variables":{"bos_token":"<s>","enable_thinking":false}}#}
 *
 * Without the comment there are no variables, and the date of strftime_now() is JINJA_CHAT_DATE: the same data should
 * give the same tokens tomorrow.
 *
 * A conversation may also have
 *
 *   trained                whether each message is trained on: a list of true and false; if empty, all of the assistant's
 *   continued              bytes of the last message's content that are given: the model continues it, or the rest of
 *                          the content is its answer (transformers: continue_final_message)
 *
 * Files (jinja_chat_open):
 *
 *   FOLDER                 chat_template.jinja, else chat_template of tokenizer_config.json, as in transformers
 *   FILE.json              its chat_template: a text, or a list of named templates
 *   FILE                   the template's text
 *
 * The special tokens bos_token, eos_token, unk_token, sep_token, pad_token, cls_token and mask_token are read from the
 * folder's tokenizer_config.json, or if that does not have them, from special_tokens_map.json.
 *
 * Of named templates, "default" is used, and "tool_use" for conversations that have tools; the others are only used by
 * programs that ask for them by name. chat_template.jinja is the default to additional_chat_templates/tool_use.jinja.
 *
 * Encoding. The whole text is rendered. The names of special tokens are tokens only in bytes that come from the
 * template, so that a message cannot end a turn. The text between them is encoded as one text, whether it comes from
 * the template or from a message, as transformers does; a token begins at the start of each trained span, so that the
 * tokens of a prompt do not depend on the completion.
 *
 * Trained spans:
 *
 *   1. If the template has {% generation %}, these blocks.
 *   2. Else, for each assistant message i: what render(messages[0..i]) has more than the prompt,
 *      render(messages[0..i-1]) with add_generation_prompt, up to and including the token that ends the turn. If the
 *      former does not begin with the latter (DeepSeek R1's prompt ends with <think>), the span begins after their
 *      common beginning, which must contain all messages of the prompt.
 *   3. If the whole conversation is rendered differently from a conversation that ends with turn i (Qwen3 leaves out
 *      the thinking of old turns), then `together` is false, and the conversation has to be encoded once for each
 *      assistant turn, up to that turn.
 *
 *     JinjaChat c;
 *     JinjaTurns turns;
 *     TokenList list = {0};
 *     uint8_t *mask = NULL;
 *     json_t *conversation = json_pack("{s:[{s:s,s:s}]}", "messages", "role", "user", "content", "Hello");
 *     char *spec = jinja_chat_open("Qwen3-0.6B/", NULL, NULL, NULL, e);
 *     if (!spec || !jinja_chat_parse(&c, spec, e)) return false;
 *     if (!jinja_chat_turns(&c, &tokenizer, conversation, false, &turns, e)) return false;
 *     if (!jinja_chat_encode(&turns, &tokenizer, false, &list, &mask, e)) return false;
 *     jinja_turns_free(&turns);
 *     jinja_chat_free(&c);
 */
#ifndef LLMC_TEXT_JINJA_CHAT_H
#define LLMC_TEXT_JINJA_CHAT_H

#include "../base/error.h"     /* Error, error_set, xstrdup, xrealloc, ... */
#include "../base/io.h"        /* file_exists, file_slurp */
#include "../base/json_text.h" /* json_parse_object */
#include "../base/text.h"      /* text_append, text_string, TextBuffer, TokenList, ... */
#include "jinja.h"             /* jinja_text_free, jinja_free, jinja_parse, jinja_render */
#include "jinja_parse.h"       /* JINJA_TEMPLATE_MAX, Jinja */
#include "jinja_value.h"       /* JinjaText, JINJA_MESSAGE, JINJA_GENERATED, JINJA_BEGIN */
#include "tokenizer.h"         /* Tokenizer, tokenizer_token, TOKENIZER_CONTINUES, tokenizer_encode, ... */
#include <sys/stat.h>

#define JINJA_CHAT_DATE "2024-07-26"

enum {
    JINJA_CHAT_FILE_MAX = 1 << 26, /* bytes of a tokenizer_config.json */
    JINJA_CHAT_WORK_MAX = 1 << 29, /* steps of the renderings that find the turns of one conversation */
};

typedef struct JinjaChat {
    Jinja tree;
    json_t *variables;
    struct tm date;
    JinjaText tail; /* what the template writes after the content of an assistant's last message; empty: unknown */
} JinjaChat;

/* The rendered conversation and its trained spans, bytes [begin, end) of the text. */
typedef struct JinjaTurns {
    JinjaText text;
    struct JinjaSpan {
        size_t begin, end;
    } * spans;
    int count, capacity;
    bool together; /* all assistant messages have a span */
} JinjaTurns;

/* ---- a template with its variables ----------------------------------------------------------------------------- */

/* Reads YYYY-MM-DD. */
static inline bool jinja_chat_date(const char *text, struct tm *date, Error *e) {
    int n = 0;
    *date = (struct tm){0};
    const bool shaped =
        strlen(text) == 10 && sscanf(text, "%4d-%2d-%2d%n", &date->tm_year, &date->tm_mon, &date->tm_mday, &n) == 3;
    date->tm_year -= 1900;
    date->tm_mon--;
    const struct tm given = *date;
    if (shaped && n == 10 && timegm(date) != (time_t)-1 && date->tm_mday == given.tm_mday &&
        date->tm_mon == given.tm_mon)
        return true;
    return error_set(e, "date '%.40s': expected an existing day as YYYY-MM-DD", text);
}

/* Returns the template's text with the comment that has its values; the caller frees it.
 * variables: an object or NULL. date: YYYY-MM-DD or NULL. */
static inline char *jinja_chat_spec(const char *text, const json_t *variables, const char *date, Error *e) {
    static const char *const taken[] = {"messages", "tools", "documents", "add_generation_prompt"};
    struct tm parsed;
    if (date && !jinja_chat_date(date, &parsed, e)) return NULL;
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        if (json_object_get(variables, taken[i]))
            return error_set(e, "chat template: '%s' cannot be given as a variable", taken[i]), NULL;
    json_t *head = json_object();
    json_object_set_new(head, "date", json_string(date ? date : JINJA_CHAT_DATE));
    json_object_set_new(head, "variables", variables ? json_deep_copy(variables) : json_object());
    char *dump = json_dumps(head, JSON_COMPACT);
    json_decref(head);
    if (!dump) return error_set(e, "chat template: its variables cannot be written as JSON"), NULL;
    TextBuffer spec = {0};
    text_string(&spec, "{#llmc ");
    for (const char *s = dump; *s; s++) text_append(&spec, *s == '#' ? "\\u0023" : s, *s == '#' ? 6 : 1);
    text_string(&spec, "#}\n");
    text_string(&spec, text);
    free(dump);
    if (spec.length < JINJA_TEMPLATE_MAX) return spec.text;
    text_free(&spec);
    return error_set(e, "chat template: has more than %d bytes with its variables", JINJA_TEMPLATE_MAX), NULL;
}

/* Whether a template's text is Jinja: it has a tag that is not escaped with a backslash. */
static inline bool jinja_chat_is(const char *spec) {
    for (const char *s = spec; *s; s++) {
        if (*s == '\\' && s[1]) s++;
        else if (*s == '{' && s[1] && strchr("{%#", s[1])) return true;
    }
    return false;
}

static inline void jinja_chat_free(JinjaChat *c) {
    jinja_free(&c->tree);
    json_decref(c->variables);
    jinja_text_free(&c->tail);
    *c = (JinjaChat){0};
}

/* Reads the comment before the template. Returns the rest, or NULL. */
static inline const char *jinja_chat_head(JinjaChat *c, const char *spec, Error *e) {
    c->variables = json_object();
    if (!jinja_chat_date(JINJA_CHAT_DATE, &c->date, e)) return NULL;
    if (strncmp(spec, "{#llmc ", 7)) return spec;
    const char *end = strstr(spec, "#}");
    json_t *head = end ? json_loadb(spec + 7, (size_t)(end - spec) - 7, 0, NULL) : NULL;
    json_t *variables = json_object_get(head, "variables");
    const char *date = json_string_value(json_object_get(head, "date"));
    const bool ok = json_is_object(variables) && date && jinja_chat_date(date, &c->date, NULL);
    if (ok) json_object_update(c->variables, variables);
    json_decref(head);
    if (!ok)
        return error_set(e, "chat template: the comment {#llmc ...#} is not {\"date\":...,\"variables\":{...}}"), NULL;
    return end + 2 + (end[2] == '\n');
}

/* ---- rendering ------------------------------------------------------------------------------------------------- */

/* Returns the messages as the template gets them: a new array. */
static inline json_t *jinja_chat_prepare(const json_t *messages) {
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    json_t *all = json_array();
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i), *copy = json_object(), *reasoning = NULL, *value;
        const char *key;
        for (int k = 0; k < 3 && !reasoning; k++) {
            reasoning = json_object_get(message, names[k]);
            if (json_is_null(reasoning)) reasoning = NULL;
        }
        if (reasoning) json_object_set(copy, "thinking", reasoning);
        json_object_foreach(message, key, value) {
            if (!json_is_null(value)) json_object_set(copy, key, value);
        }
        if (reasoning) json_object_set(copy, "reasoning_content", reasoning);
        json_array_append_new(all, copy);
    }
    return all;
}

/* Renders the first `count` of the prepared messages. */
static inline bool jinja_chat_render_some(const JinjaChat *c, const json_t *conversation, const json_t *messages,
                                          size_t count, bool generation_prompt, JinjaText *out, Error *e) {
    json_t *given = json_object(), *variables = json_copy(c->variables), *some = json_array();
    json_t *tools = json_object_get(conversation, "tools"), *documents = json_object_get(conversation, "documents");
    for (size_t i = 0; i < count; i++) json_array_append(some, json_array_get(messages, i));
    json_object_set_new(given, "messages", some);
    json_object_set_new(given, "tools", tools ? json_incref(tools) : json_null());
    json_object_set_new(given, "documents", documents ? json_incref(documents) : json_null());
    json_object_set_new(variables, "add_generation_prompt", json_boolean(generation_prompt));
    const bool ok = jinja_render(&c->tree, given, variables, &c->date, out, e);
    json_decref(given);
    json_decref(variables);
    return ok;
}

/* Checks the shape of a conversation. */
static inline bool jinja_chat_check(const json_t *conversation, Error *e) {
    const json_t *messages = json_object_get(conversation, "messages"), *tools = json_object_get(conversation, "tools");
    if (!json_is_array(messages)) return error_set(e, "conversation: has no list of messages");
    for (size_t i = 0; i < json_array_size(messages); i++)
        if (!json_is_object(json_array_get(messages, i)))
            return error_set(e, "conversation: message %zu is not an object", i);
    if (tools && !json_is_null(tools) && !json_is_array(tools))
        return error_set(e, "conversation: tools is not a list");
    for (size_t i = 0; i < json_array_size(tools); i++)
        if (!json_is_object(json_array_get(tools, i)))
            return error_set(e, "conversation: tool %zu is not an object, expected its JSON schema", i);
    return true;
}

/* Renders a conversation; the caller frees *out with jinja_text_free(). */
static inline bool jinja_chat_render(const JinjaChat *c, const json_t *conversation, bool generation_prompt,
                                     JinjaText *out, Error *e) {
    *out = (JinjaText){0};
    if (!jinja_chat_check(conversation, e)) return false;
    json_t *messages = jinja_chat_prepare(json_object_get(conversation, "messages"));
    const bool ok =
        jinja_chat_render_some(c, conversation, messages, json_array_size(messages), generation_prompt, out, e);
    json_decref(messages);
    return ok;
}

/* Renders a conversation up to byte `given` of its last message's content, which the template must write as it is. */
static inline bool jinja_chat_render_given(const JinjaChat *c, const json_t *conversation, size_t given, JinjaText *out,
                                           Error *e) {
    json_t *messages = json_copy(json_object_get(conversation, "messages"));
    const size_t count = json_array_size(messages);
    json_t *last = json_copy(json_array_get(messages, count - 1));
    const char *content = json_string_value(json_object_get(last, "content"));
    json_t *before = content && strlen(content) >= given ? json_stringn(content, given) : NULL, *all = NULL;
    bool ok = before || error_set(e, "conversation: its last message has no text that could be continued");
    if (ok) {
        json_object_set(last, "content", before);
        json_array_set(messages, count - 1, last);
        all = jinja_chat_prepare(messages);
        ok = jinja_chat_render_some(c, conversation, all, count, false, out, e);
    }
    size_t end = ok ? out->length : 0;
    for (; ok && end >= given; end--)
        if (!given || (!memcmp(out->text + end - given, content, given) && out->marks[end - 1] & JINJA_MESSAGE)) break;
    if (ok && (end < given || !given)) {
        jinja_text_free(out);
        ok = error_set(e, "chat template: it changes the text of the last message, which could not be continued");
    }
    if (ok) out->length = end;
    json_decref(before), json_decref(last), json_decref(messages), json_decref(all);
    return ok;
}

/* Renders a conversation as jinja_chat_render() does; a prompt whose last message is continued ends with its content. */
static inline bool jinja_chat_prompt(const JinjaChat *c, const json_t *conversation, bool generation_prompt,
                                     JinjaText *out, Error *e) {
    const json_t *given = json_object_get(conversation, "continued");
    *out = (JinjaText){0};
    if (!given || !generation_prompt) return jinja_chat_render(c, conversation, generation_prompt, out, e);
    return jinja_chat_check(conversation, e) &&
           jinja_chat_render_given(c, conversation, (size_t)json_integer_value(given), out, e);
}

/* Finds what follows the content of an assistant's message. */
static inline void jinja_chat_probe(JinjaChat *c) {
    static const char *const word = "CONTENT";
    json_t *probe = json_pack("{s:[{s:s,s:s},{s:s,s:s}]}", "messages", "role", "user", "content", "Q", "role",
                              "assistant", "content", word);
    JinjaText text;
    const size_t n = strlen(word);
    if (!jinja_chat_render(c, probe, false, &text, NULL)) text.length = 0;
    for (size_t i = text.length; i-- > 0;) {
        if (i + n > text.length || memcmp(text.text + i, word, n) || !(text.marks[i] & JINJA_MESSAGE)) continue;
        const size_t begin = i + n;
        memmove(text.text, text.text + begin, text.length - begin);
        memmove(text.marks, text.marks + begin, text.length - begin);
        text.length -= begin;
        c->tail = text;
        text = (JinjaText){0};
        break;
    }
    jinja_text_free(&text);
    json_decref(probe);
}

/* Parses a template with or without the comment that has its values. */
static inline bool jinja_chat_parse(JinjaChat *c, const char *spec, Error *e) {
    *c = (JinjaChat){0};
    const char *text = jinja_chat_head(c, spec, e);
    if (!text || !jinja_parse(&c->tree, text, strlen(text), e)) {
        jinja_chat_free(c);
        return false;
    }
    jinja_chat_probe(c);
    return true;
}

/* ---- special tokens -------------------------------------------------------------------------------------------- */

/* Finds the first special token in text[*at..end) whose bytes all come from the template. Returns its id and sets *at,
 * or returns -1. */
static inline int32_t jinja_chat_special(const JinjaText *text, const Tokenizer *t, size_t *at, size_t end) {
    for (size_t from = *at, to; from < end; from = to) {
        for (; from < end && text->marks[from] & JINJA_MESSAGE; from++) continue;
        for (to = from; to < end && !(text->marks[to] & JINJA_MESSAGE); to++) continue;
        size_t found = 0;
        const int32_t id = tokenizer_find_special(t, text->text + from, to - from, &found);
        if (id < 0) continue;
        *at = from + found;
        return id;
    }
    return -1;
}

/* Returns the token that ends the assistant's turn, or -1 if the template writes none. *trained: it is in the trained
 * spans. */
static inline int32_t jinja_chat_stop(const JinjaChat *c, const Tokenizer *t, bool *trained) {
    size_t at = 0;
    const int32_t id = jinja_chat_special(&c->tail, t, &at, c->tail.length);
    *trained = id >= 0 && (!c->tree.generation || c->tail.marks[at] & JINJA_GENERATED);
    return id;
}

/* ---- the turns ------------------------------------------------------------------------------------------------- */

static inline void jinja_turns_free(JinjaTurns *turns) {
    jinja_text_free(&turns->text);
    free(turns->spans);
    *turns = (JinjaTurns){0};
}

static inline void jinja_turns_add(JinjaTurns *turns, size_t begin, size_t end) {
    if (turns->count == turns->capacity) {
        turns->capacity = turns->capacity ? 2 * turns->capacity : 8;
        turns->spans = (struct JinjaSpan *)xrealloc(turns->spans, (size_t)turns->capacity, sizeof *turns->spans);
    }
    turns->spans[turns->count++] = (struct JinjaSpan){begin, end};
}

/* Adds the spans of {% generation %}. */
static inline void jinja_turns_generated(JinjaTurns *turns) {
    const JinjaText *text = &turns->text;
    for (size_t i = 0, begin; i < text->length;) {
        for (; i < text->length && !(text->marks[i] & JINJA_GENERATED); i++) continue;
        for (begin = i++; i < text->length && (text->marks[i] & (JINJA_GENERATED | JINJA_BEGIN)) == JINJA_GENERATED;
             i++)
            continue;
        if (begin < text->length) jinja_turns_add(turns, begin, i);
    }
}

/* Returns the end of the turn that begins at byte `begin`: the byte after its stop token. */
static inline size_t jinja_turns_end(const JinjaText *text, const Tokenizer *t, size_t begin, int32_t stop) {
    size_t last = text->length, length;
    for (size_t at = begin;;) {
        const int32_t id = jinja_chat_special(text, t, &at, text->length);
        if (id < 0) return last;
        tokenizer_token(t, id, &length);
        at += length;
        last = at;
        if (id == stop) return at;
    }
}

/* Returns the start of the trained text of q, which has the answer to the prompt p, or -1 if the prompt's messages are
 * not in both. */
static inline int64_t jinja_turns_begin(const JinjaText *p, const JinjaText *q, const Tokenizer *t) {
    size_t common = 0;
    while (common < p->length && common < q->length && p->text[common] == q->text[common]) common++;
    if (common == p->length) return (int64_t)common;
    for (size_t i = common; i < p->length; i++)
        if (p->marks[i] & JINJA_MESSAGE) return -1;
    while (common && common < q->length && ((unsigned char)q->text[common] & 0xC0) == 0x80) common--;
    size_t at = 0, length;
    for (int32_t id; (id = jinja_chat_special(q, t, &at, q->length)) >= 0 && at < common; at += length) {
        tokenizer_token(t, id, &length);
        if (at + length > common) return (int64_t)at; /* a special token is not split */
    }
    return (int64_t)common;
}

/* Adds the span of assistant message i, or clears `together`. text_is_q: the whole text is that up to message i. */
static inline bool jinja_turns_message(const JinjaChat *c, const Tokenizer *t, const json_t *conversation,
                                       const json_t *messages, size_t i, bool text_is_q, size_t *work,
                                       JinjaTurns *turns, Error *e) {
    JinjaText p = {0}, own = {0};
    const JinjaText *q = text_is_q ? &turns->text : &own;
    bool trained, ok = jinja_chat_render_some(c, conversation, messages, i, true, &p, e) &&
                       (text_is_q || jinja_chat_render_some(c, conversation, messages, i + 1, false, &own, e));
    if (ok && (*work += p.steps + own.steps) > JINJA_CHAT_WORK_MAX)
        ok = error_set(e,
                       "chat template: it has no {%% generation %%}, and the turns of so long a conversation cannot be "
                       "found without it");
    if (ok) {
        const int64_t begin = jinja_turns_begin(&p, q, t);
        if (begin < 0)
            ok = error_set(
                e,
                "chat template: message %zu, of the assistant, changes how the messages before it are written, "
                "so its tokens cannot be distinguished; use a template with {%% generation %%}",
                i);
        else {
            const size_t end = jinja_turns_end(q, t, (size_t)begin, jinja_chat_stop(c, t, &trained));
            const bool kept = end <= turns->text.length && !memcmp(q->text, turns->text.text, end);
            if (kept) jinja_turns_add(turns, (size_t)begin, end);
            else turns->together = false;
        }
    }
    jinja_text_free(&p);
    jinja_text_free(&own);
    return ok;
}

/* Whether message i of the conversation is the assistant's; *trained: whether it is trained on. */
static inline bool jinja_turns_assistant(const json_t *conversation, size_t i, bool *trained) {
    const json_t *message = json_array_get(json_object_get(conversation, "messages"), i);
    const char *role = json_string_value(json_object_get(message, "role"));
    *trained = !json_is_false(json_array_get(json_object_get(conversation, "trained"), i));
    return role && !strcmp(role, "assistant");
}

/* Removes the spans of {% generation %} of messages that are not trained on. */
static inline bool jinja_turns_select(const json_t *conversation, JinjaTurns *turns, Error *e) {
    const size_t n = json_array_size(json_object_get(conversation, "messages"));
    int spans = 0, kept = 0;
    bool trained, all = true;
    for (size_t i = 0; i < n; i++) {
        if (!jinja_turns_assistant(conversation, i, &trained)) continue;
        if (trained && spans < turns->count) turns->spans[kept++] = turns->spans[spans];
        all = all && trained;
        spans++;
    }
    if (all) return true;
    if (spans != turns->count)
        return error_set(
            e,
            "chat template: its {%% generation %%} blocks are %d for %d messages of the assistant, so those "
            "that are not trained on cannot be found",
            turns->count, spans);
    turns->count = kept;
    return true;
}

/* Begins the last span after the bytes of the last message that are given. */
static inline bool jinja_turns_continue(const JinjaChat *c, const json_t *conversation, JinjaTurns *turns, Error *e) {
    const json_t *given = json_object_get(conversation, "continued");
    JinjaText p = {0};
    if (!given) return true;
    bool ok = jinja_chat_render_given(c, conversation, (size_t)json_integer_value(given), &p, e);
    if (ok && (!turns->count || p.length > turns->text.length || memcmp(p.text, turns->text.text, p.length)))
        ok = error_set(e, "chat template: it writes a message differently once it is continued");
    if (ok) turns->spans[turns->count - 1].begin = p.length;
    jinja_text_free(&p);
    return ok;
}

/* Adds the spans of the assistant's messages. */
static inline bool jinja_turns_messages(const JinjaChat *c, const Tokenizer *t, const json_t *conversation,
                                        bool generation_prompt, JinjaTurns *turns, Error *e) {
    json_t *messages = jinja_chat_prepare(json_object_get(conversation, "messages"));
    const size_t n = json_array_size(messages);
    size_t work = 0;
    bool ok = true, trained;
    for (size_t i = 0; i < n && ok; i++)
        if (jinja_turns_assistant(conversation, i, &trained) && trained)
            ok =
                jinja_turns_message(c, t, conversation, messages, i, i + 1 == n && !generation_prompt, &work, turns, e);
    json_decref(messages);
    return ok;
}

/* Renders a conversation and finds the trained spans; the caller frees *turns. */
static inline bool jinja_chat_turns(const JinjaChat *c, const Tokenizer *t, const json_t *conversation,
                                    bool generation_prompt, JinjaTurns *turns, Error *e) {
    *turns = (JinjaTurns){.together = true};
    if (!jinja_chat_prompt(c, conversation, generation_prompt, &turns->text, e)) return false;
    if (generation_prompt && json_object_get(conversation, "continued")) return true;
    bool ok;
    if (c->tree.generation) {
        jinja_turns_generated(turns);
        ok = jinja_turns_select(conversation, turns, e);
    } else ok = jinja_turns_messages(c, t, conversation, generation_prompt, turns, e);
    ok = ok && jinja_turns_continue(c, conversation, turns, e);
    if (!ok) jinja_turns_free(turns);
    return ok;
}

/* ---- encoding -------------------------------------------------------------------------------------------------- */

/* Appends the tokens of text[begin..end), which has no special tokens of the template. */
static inline bool jinja_chat_stretch(const JinjaText *text, const Tokenizer *t, size_t begin, size_t end,
                                      TokenList *out, Error *e) {
    return tokenizer_encode(t, text->text + begin, end - begin, TOKENIZER_CONTINUES, out, e);
}

/* Appends the tokens of text[begin..end) and, if `mask` is not NULL, their mask: 1 for tokens that begin before
 * `trained`. If the tokens' bytes do not add up to the text's, which is the case after normalisation, a token begins at
 * `trained`. */
static inline bool jinja_chat_append(const JinjaText *text, const Tokenizer *t, size_t begin, size_t end,
                                     size_t trained, TokenList *out, TextBuffer *mask, Error *e) {
    const int32_t first = out->count;
    size_t at = begin, n;
    if (!jinja_chat_stretch(text, t, begin, end, out, e)) return false;
    if (trained > begin && trained < end) {
        for (int32_t i = first; i < out->count; i++, at += n) {
            tokenizer_token(t, out->ids[i], &n);
            text_append(mask, at < trained ? "\1" : "", 1);
        }
        if (at == end) return true;
        out->count = first;
        mask->length -= mask->length - (size_t)first;
        return jinja_chat_append(text, t, begin, trained, trained, out, mask, e) &&
               jinja_chat_append(text, t, trained, end, trained, out, mask, e);
    }
    for (int32_t i = first; i < out->count; i++) text_append(mask, trained >= end ? "\1" : "", 1);
    return true;
}

/* Appends the tokens of a rendered conversation to `out`. If `mask` is not NULL, *mask is extended to out->count
 * entries: 1 on the trained tokens, else 0; last: only the last span is trained. */
static inline bool jinja_chat_encode(const JinjaTurns *turns, const Tokenizer *t, bool last, TokenList *out,
                                     uint8_t **mask, Error *e) {
    const JinjaText *text = &turns->text;
    const int32_t before = out->count;
    TextBuffer marks = {0};
    for (int32_t i = 0; i < before; i++) text_append(&marks, "", 1);
    size_t special = 0, length = 0; /* the next special token */
    int32_t id = jinja_chat_special(text, t, &special, text->length);
    int span = 0;
    bool ok = true;
    for (size_t at = 0; at < text->length && ok;) {
        while (span < turns->count && turns->spans[span].end <= at) span++;
        const bool inside = span < turns->count && at >= turns->spans[span].begin;
        const bool trained = inside && (!last || span + 1 == turns->count);
        const int following = span + inside;
        const size_t boundary = following < turns->count ? turns->spans[following].begin : text->length;
        size_t next = id < 0 ? text->length : special;
        if (boundary > at && boundary < next) next = boundary;
        if (next > at) {
            ok = jinja_chat_append(text, t, at, next, trained ? turns->spans[span].end : 0, out, &marks, e);
            at = next;
            continue;
        }
        token_list_append(out, id);
        text_append(&marks, trained ? "\1" : "", 1);
        tokenizer_token(t, id, &length);
        at += length;
        special = at;
        id = jinja_chat_special(text, t, &special, text->length);
    }
    if (ok && mask) {
        *mask = (uint8_t *)xrealloc(*mask, (size_t)out->count, 1);
        if (out->count > before) memcpy(*mask + before, marks.text + before, (size_t)(out->count - before));
    }
    text_free(&marks);
    return ok;
}

/* ---- answers --------------------------------------------------------------------------------------------------- */

/* Removes the first n bytes of a rendered text. */
static inline void jinja_text_drop(JinjaText *text, size_t n) {
    memmove(text->text, text->text + n, text->length - n);
    memmove(text->marks, text->marks + n, text->length - n);
    text->length -= n;
}

/* The first byte of the first `word` that stands in the content of a message; the length of the text if there is none. */
static inline size_t jinja_text_content(const JinjaText *text, const char *word) {
    const size_t n = strlen(word);
    for (size_t at = 0; at + n <= text->length; at++)
        if (!memcmp(text->text + at, word, n) && text->marks[at] & JINJA_MESSAGE) return at;
    return text->length;
}

/* Appends the tokens that follow the content of a user's last message: the end of its turn and the generation prompt. */
static inline bool jinja_chat_encode_opening(const JinjaChat *c, const Tokenizer *t, TokenList *out, Error *e) {
    static const char *const word = "CONTENT";
    json_t *conversation = json_pack("{s:[{s:s,s:s}]}", "messages", "role", "user", "content", word);
    JinjaTurns turns = {.together = true};
    bool ok = jinja_chat_render(c, conversation, true, &turns.text, e);
    json_decref(conversation);
    if (!ok) return false;
    const size_t at = jinja_text_content(&turns.text, word);
    if (at == turns.text.length) ok = error_set(e, "chat template: it does not write a user's content");
    if (ok) {
        jinja_text_drop(&turns.text, at + strlen(word));
        ok = jinja_chat_encode(&turns, t, false, out, NULL, e);
    }
    jinja_turns_free(&turns);
    return ok;
}

/* Appends the tokens that follow the token that ends an assistant's turn, up to the content of the assistant's next one:
 * the rest of what the template writes after a turn, then `messages`, a list of messages such as tool results, then the
 * generation prompt. */
static inline bool jinja_chat_encode_answer(const JinjaChat *c, const Tokenizer *t, const json_t *messages,
                                            TokenList *out, Error *e) {
    static const char *const word = "CONTENT";
    json_t *conversation = json_pack("{s:[{s:s,s:s},{s:s,s:s}]}", "messages", "role", "user", "content", "Q", "role",
                                     "assistant", "content", word);
    json_array_extend(json_object_get(conversation, "messages"), (json_t *)messages);
    JinjaTurns turns = {.together = true};
    bool trained, ok = jinja_chat_render(c, conversation, true, &turns.text, e);
    json_decref(conversation);
    if (!ok) return false;
    const JinjaText *text = &turns.text;
    size_t at = jinja_text_content(text, word), length = 0;
    const int32_t stop = jinja_chat_stop(c, t, &trained);
    int32_t id = -1;
    if (at < text->length) id = jinja_chat_special(text, t, &at, text->length);
    if (id >= 0) tokenizer_token(t, id, &length);
    if (id < 0 || id != stop)
        ok = error_set(e, "chat template: no token ends an assistant's turn before a tool's result");
    if (ok) {
        jinja_text_drop(&turns.text, at + length);
        ok = jinja_chat_encode(&turns, t, false, out, NULL, e);
    }
    jinja_turns_free(&turns);
    return ok;
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static inline char *jinja_chat_path(const char *folder, const char *name) {
    TextBuffer path = {0};
    text_format(&path, "%s/%s", folder, name);
    return path.text;
}

/* Reads a JSON object; NULL with *e set if it cannot be read, NULL with an empty *e if it does not exist. */
static inline json_t *jinja_chat_json(const char *path, Error *e) {
    size_t n;
    e->text[0] = 0;
    if (!file_exists(path)) return NULL;
    char *text = file_slurp(path, JINJA_CHAT_FILE_MAX, &n, e);
    json_t *json = text ? json_parse_object(text, n, JSON_ALLOW_NUL, path, e) : NULL;
    free(text);
    return json;
}

/* Joins the template for conversations that have tools to the default one; takes over both texts. tools: or NULL. As
 * jinja2 does at the end of a template, one newline is removed from the end of each. */
static inline char *jinja_chat_with_tools(char *tools, char *text) {
    if (!tools) return text;
    TextBuffer b = {0};
    char *const parts[] = {tools, text};
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(parts[i]);
        if (n && parts[i][n - 1] == '\n') n--;
        if (n && parts[i][n - 1] == '\r') n--;
        text_string(&b, i ? "{% else %}\n" : "{% if tools is defined and tools is not none %}\n");
        text_append(&b, parts[i], n);
        text_string(&b, "{{ '' }}"); /* white space before it is kept */
        free(parts[i]);
    }
    text_string(&b, "{% endif %}");
    return b.text;
}

/* Copies a template of a tokenizer_config.json. Returns NULL with *e set if it is not a text without NUL. */
static inline char *jinja_chat_text(const json_t *value, const char *path, Error *e) {
    const char *text = json_string_value(value);
    if (text && strlen(text) == json_string_length(value)) return xstrdup(text);
    error_set(e, "%s: chat_template is not a text", path);
    return NULL;
}

/* The last entry of this name in a list of named templates, as in transformers; NULL: there is none. */
static inline const json_t *jinja_chat_named(const json_t *list, const char *name) {
    const json_t *found = NULL;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        const char *own = json_string_value(json_object_get(entry, "name"));
        if (own && !strcmp(own, name)) found = entry;
    }
    return found;
}

/* Copies the template of a tokenizer_config.json. Returns NULL with an empty *e if it has none. */
static inline char *jinja_chat_of_config(const json_t *config, const char *path, Error *e) {
    const json_t *value = json_object_get(config, "chat_template");
    e->text[0] = 0;
    if (!value || json_is_null(value)) return NULL;
    if (!json_is_array(value)) return jinja_chat_text(value, path, e);
    const json_t *entry = jinja_chat_named(value, "default"), *other = jinja_chat_named(value, "tool_use");
    if (!entry) {
        error_set(e, "%s: chat_template is a list of templates, none of which is named \"default\"", path);
        return NULL;
    }
    char *text = jinja_chat_text(json_object_get(entry, "template"), path, e);
    char *tools = text && other ? jinja_chat_text(json_object_get(other, "template"), path, e) : NULL;
    if (!other || tools) return jinja_chat_with_tools(tools, text);
    free(text);
    return NULL;
}

/* Sets the special tokens of a folder in `variables`, unless they are already set. */
static inline bool jinja_chat_tokens(const char *folder, json_t *variables, Error *e) {
    static const char *const files[] = {"tokenizer_config.json", "special_tokens_map.json"};
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    for (int f = 0; f < 2; f++) {
        char *path = jinja_chat_path(folder, files[f]);
        json_t *config = jinja_chat_json(path, e);
        free(path);
        if (!config && e->text[0]) return false;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            json_t *token = json_object_get(config, names[i]);
            if (json_is_object(token)) token = json_object_get(token, "content");
            if (json_is_string(token) && !json_object_get(variables, names[i]))
                json_object_set(variables, names[i], token);
        }
        json_decref(config);
    }
    return true;
}

/* Reads a template's file. Returns NULL with an empty *e if it does not exist. */
static inline char *jinja_chat_of_text(const char *path, Error *e) {
    size_t n;
    e->text[0] = 0;
    if (!file_exists(path)) return NULL;
    char *text = file_slurp(path, JINJA_TEMPLATE_MAX, &n, e);
    if (!text || strlen(text) == n) return text;
    free(text);
    return error_set(e, "%s: contains a NUL, expected the text of a chat template", path), NULL;
}

#define JINJA_CHAT_TOOLS "additional_chat_templates/tool_use.jinja"

/* Adds a folder's template for conversations that have tools, if there is one. Takes over text. */
static inline char *jinja_chat_add_tools(const char *folder, char *text, Error *e) {
    char *path = jinja_chat_path(folder, JINJA_CHAT_TOOLS);
    char *tools = jinja_chat_of_text(path, e);
    free(path);
    if (tools || !e->text[0]) return jinja_chat_with_tools(tools, text);
    free(text);
    return NULL;
}

/* Reads the template's text of a folder. *note: a text for the user, or empty. */
static inline char *jinja_chat_of_folder(const char *folder, Error *note, Error *e) {
    char *file = jinja_chat_path(folder, "chat_template.jinja"),
         *other = jinja_chat_path(folder, "tokenizer_config.json");
    char *text = NULL, *second = NULL;
    json_t *config = jinja_chat_json(other, e);
    bool ok = config || !e->text[0];
    if (ok && config) {
        second = jinja_chat_of_config(config, other, e);
        ok = second || !e->text[0];
    }
    if (ok) {
        text = jinja_chat_of_text(file, e);
        ok = text || !e->text[0];
    }
    const bool same = ok && text && second && !strcmp(text, second); /* but for a template for tools */
    if (ok && text) {
        text = jinja_chat_add_tools(folder, text, e);
        ok = text != NULL;
    }
    if (ok && text && second && !same && strcmp(text, second))
        error_set(note, "%s: differs from chat_template in tokenizer_config.json and is used instead", file);
    char *tools = jinja_chat_path(folder, JINJA_CHAT_TOOLS);
    if (ok && !text && second && file_exists(tools))
        error_set(note, "%s: is not used, because there is no chat_template.jinja", tools);
    free(tools);
    if (ok && !text && !second)
        ok = error_set(e, "%s: has neither chat_template.jinja nor a chat_template in tokenizer_config.json", folder);
    if (ok && !text) {
        text = second;
        second = NULL;
    }
    if (!ok) free(text);
    free(second);
    free(file);
    free(other);
    json_decref(config);
    return ok ? text : NULL;
}

/* Reads the template's text of a file. */
static inline char *jinja_chat_of_file(const char *path, Error *e) {
    const size_t length = strlen(path);
    if (length > 5 && !strcmp(path + length - 5, ".json")) {
        json_t *config = jinja_chat_json(path, e);
        char *text = config ? jinja_chat_of_config(config, path, e) : NULL;
        if (!text && !e->text[0]) error_set(e, config ? "%s: has no chat_template" : "%s: does not exist", path);
        json_decref(config);
        return text;
    }
    return jinja_chat_of_text(path, e);
}

/* Reads the template and the special tokens of a folder or a file, see above. Returns the spec for jinja_chat_parse();
 * the caller frees it.
 * variables: an object with further variables, which replace the special tokens of the same names, or NULL.
 * date: YYYY-MM-DD or NULL. note: gets a text for the user, or "" (may be NULL). */
static inline char *jinja_chat_open(const char *path, const json_t *variables, const char *date, Error *note,
                                    Error *e) {
    struct stat st;
    Error ignored;
    if (!note) note = &ignored;
    note->text[0] = 0;
    if (stat(path, &st)) return error_set(e, "%s: %s", path, strerror(errno)), NULL;
    const bool folder = S_ISDIR(st.st_mode);
    char *text = folder ? jinja_chat_of_folder(path, note, e) : jinja_chat_of_file(path, e), *spec = NULL;
    if (!text) return NULL;
    const char *slash = strrchr(path, '/');
    char *parent = folder  ? xstrdup(path)
                   : slash ? xstrndup(path, (size_t)(slash - path) + (slash == path))
                           : xstrdup(".");
    json_t *all = variables ? json_deep_copy(variables) : json_object();
    if (jinja_chat_tokens(parent, all, e)) spec = jinja_chat_spec(text, all, date, e);
    json_decref(all);
    free(parent);
    free(text);
    return spec;
}

#endif
