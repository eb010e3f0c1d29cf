/* row_messages.h - the messages of a row: their roles, contents, tool calls, reasoning and flags, in the conventions of
 * row_fields.h.
 *
 *   role      role or from; human and user, gpt, chatgpt, bing, bard, model, bot and assistant, observation, function,
 *             ipython and tool, function_call (a call as JSON: an assistant's message with tool_calls), system, developer
 *   content   content or value: a text, or a list of parts of type text; null only with tool_calls. In an assistant's list
 *             there may be parts of type python and python_output, if the template has sections for them (nanochat)
 *   flags     weight (OpenAI), train and training (axolotl), loss (ms-swift), mask, loss_mask, trainable: an assistant's
 *             message with 0 or false is not trained on
 *   calls     tool_calls, function_call: written by a model's own template, otherwise refused
 *   reasoning reasoning_content, thinking or reasoning: written by a model's own template that has such a name,
 *             otherwise as <think>\n...\n</think>\n\n before the content
 *
 * A template with sections gets ChatMessages, which row_turns() divides into their parts; a model's own template gets the
 * messages with all other fields.
 */
#ifndef DATA_ROW_MESSAGES_H
#define DATA_ROW_MESSAGES_H

#include "../llmc/base/error.h" /* Error, xstrdup, xrealloc, PRINTF_LIKE, ... */
#include "../llmc/base/jsonl.h" /* jsonl_error, Jsonl, jsonl_value_text, jsonl_type */
#include "../llmc/base/text.h"  /* TextBuffer, text_clear, text_free, text_string, ... */
#include "../llmc/text/chat.h"  /* ChatTemplate, ChatMessage, CHAT_CONTINUED, CHAT_UNTRAINED, ... */
#include "row_fields.h"         /* RowFields, ROW_UNREAD_MAX, row_describe, row_is_assistant, ... */

typedef struct RowMessages {
    ChatMessage *items; /* for templates with sections */
    uint8_t *flags;     /* CHAT_UNTRAINED, CHAT_CONTINUED */
    int count;
    json_t *list;  /* the same messages with all fields, for a model's own template */
    bool selected; /* a message has a flag that it is not trained on */
} RowMessages;

static inline void row_messages_free(RowMessages *m) {
    for (int i = 0; i < m->count; i++) free((char *)m->items[i].content);
    free(m->items);
    free(m->flags);
    json_decref(m->list);
    *m = (RowMessages){0};
}

/* Adds a message. `role` must outlive the list; the list takes ownership of `content`. whole: all its fields, or NULL
 * if it has only these. */
static inline void row_message(RowMessages *m, const char *role, char *content, json_t *whole) {
    m->items = (ChatMessage *)xrealloc(m->items, (size_t)m->count + 1, sizeof *m->items);
    m->flags = (uint8_t *)xrealloc(m->flags, (size_t)m->count + 1, 1);
    m->items[m->count] = (ChatMessage){role, content};
    m->flags[m->count++] = 0;
    json_t *message = whole ? json_copy(whole) : json_object();
    json_object_set_new(message, "role", json_string(role));
    if (!whole) json_object_set_new(message, "content", json_string(content));
    if (!m->list) m->list = json_array();
    json_array_append_new(m->list, message);
}

/* Appends the messages of another list. */
static inline void row_messages_join(RowMessages *m, const RowMessages *more) {
    for (int i = 0; i < more->count; i++) {
        row_message(m, more->items[i].role, xstrdup(more->items[i].content), json_array_get(more->list, (size_t)i));
        m->flags[m->count - 1] = more->flags[i];
    }
    m->selected = m->selected || more->selected;
}

static inline bool row_said_by_assistant(const RowMessages *m, int i) { return !strcmp(m->items[i].role, "assistant"); }

/* Notes something that is not read, once for each row. */
PRINTF_LIKE(2, 3) static inline void row_unread(RowFields *f, const char *format, ...) {
    char text[200];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (int i = 0; i < f->unread_count; i++)
        if (!strcmp(f->unread[i], text)) return;
    if (f->unread_count < ROW_UNREAD_MAX) f->unread[f->unread_count++] = xstrdup(text);
    else f->unread_more++;
}

/* ---- one message ----------------------------------------------------------------------------------------------- */

/* Whether a part of a content is a call or its result. */
static inline bool row_is_call(const json_t *part) {
    const char *type = json_string_value(json_object_get(part, "type"));
    return type && (!strcmp(type, "python") || !strcmp(type, "python_output"));
}

static inline bool row_has_calls(const json_t *content) {
    for (size_t i = 0; i < json_array_size(content); i++)
        if (row_is_call(json_array_get(content, i))) return true;
    return false;
}

/* Whether part i of a content, a call or its result, can be written. */
static inline bool row_check_call(const ChatTemplate *c, const Jsonl *j, const char *role, const char *type, size_t i,
                                  const char *field, Error *e) {
    if (strcmp(role, "assistant"))
        return jsonl_error(j, field, e, "part %zu is of type %s, which only the assistant's messages have", i, type);
    return chat_part_section(c, type) ||
           jsonl_error(j, field, e,
                       "part %zu is of type %s, for which this chat template has no section {%s}; the template "
                       "nanochat has one",
                       i, type, type);
}

/* Reads the content of a message of this role into `out`: a text, or a list of texts and of parts {type, text}. */
static inline bool row_content(const ChatTemplate *c, const Jsonl *j, const char *role, const json_t *content,
                               const char *field, TextBuffer *out, Error *e) {
    size_t i;
    json_t *part;
    text_clear(out);
    if (!json_is_array(content)) {
        const char *text = jsonl_value_text(j, content, field, e);
        if (text) text_string(out, text);
        return text != NULL;
    }
    json_array_foreach(content, i, part) {
        const char *type = json_string_value(json_object_get(part, "type"));
        if (row_is_call(part)) {
            if (!row_check_call(c, j, role, type, i, field, e)) return false;
        } else if (type && strcmp(type, "text") && strcmp(type, "input_text") && strcmp(type, "output_text"))
            return jsonl_error(j, field, e, "part %zu is of type '%.40s', expected text, python or python_output", i,
                               type);
        const char *text = jsonl_value_text(j, json_is_string(part) ? part : json_object_get(part, "text"), field, e);
        if (!text) return false;
        text_string(out, text);
    }
    return true;
}

/* Returns the usual name of a role. It is the caller's if the template has a section for it, or no usual one. */
static inline const char *row_role(const ChatTemplate *c, const char *role) {
    static const char *const names[][2] = {{"human", "user"},         {"user", "user"},
                                           {"input", "user"},         {"system", "system"},
                                           {"tool", "tool"},          {"observation", "tool"},
                                           {"ipython", "tool"},       {"function", "tool"},
                                           {"tool_response", "tool"}, {"function_response", "tool"},
                                           {"output", "assistant"}};
    for (int i = 0; i < c->count; i++)
        if (!strcmp(c->sections[i].role, role)) return role;
    if (row_is_assistant(role)) return "assistant";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcasecmp(role, names[i][0])) return names[i][1];
    return role;
}

/* Notes a role that is probably a mistake. */
static inline void row_check_role(RowFields *f, const ChatTemplate *c, const char *role) {
    static const char *const usual[] = {"assistant", "user", "system", "tool", "developer"};
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (!strcmp(role, usual[i])) return;
    for (int i = 0; i < c->count; i++)
        if (!strcmp(c->sections[i].role, role)) return;
    row_unread(f, "messages of role '%.60s', which are not trained on", role);
}

static inline bool row_named(const char *key, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!strcmp(key, names[i])) return true;
    return false;
}

static const char *const row_flag_names[] = {"weight", "train", "training", "loss", "mask", "loss_mask", "trainable"};
static const char *const row_reasoning_names[] = {"reasoning_content", "thinking", "reasoning"};
#define ROW_NAMED(key, names) row_named(key, names, sizeof(names) / sizeof *(names))

/* Whether the text of a model's own template has this name of a field. */
static inline bool row_template_has(const ChatTemplate *c, const char *name) {
    const size_t n = strlen(name);
    for (const char *s = c->model ? c->spec : ""; (s = strstr(s, name)); s += n)
        if ((s == c->spec || !(isalnum((unsigned char)s[-1]) || s[-1] == '_')) &&
            !(isalnum((unsigned char)s[n]) || s[n] == '_'))
            return true;
    return false;
}

/* Reads the flag that an assistant's message is trained on, and removes it from `whole`. */
static inline bool row_flags(RowFields *f, const Jsonl *j, const char *where, json_t *message, bool assistant,
                             json_t *whole, bool *trained, Error *e) {
    for (size_t i = 0; i < sizeof row_flag_names / sizeof *row_flag_names; i++) {
        const char *name = row_flag_names[i];
        const json_t *value = json_object_get(message, name);
        json_object_del(whole, name);
        if (!value || json_is_null(value)) continue;
        const int flag = row_label(value, 1);
        char text[80], field[200];
        row_describe(value, text, sizeof text);
        snprintf(field, sizeof field, "%.120s.%s", where, name);
        if (flag < 0 || json_number_value(value) < 0)
            return jsonl_error(j, field, e, "is %s; a message is trained on (1, true) or not (0, false)", text);
        if (!flag) *trained = false;
        else if (!assistant)
            row_unread(f, "field '%s' of a message that is not the assistant's, which is not trained on", name);
    }
    return true;
}

/* Reads the calls of a message into `whole`, as tool_calls. */
static inline bool row_calls(const ChatTemplate *c, const Jsonl *j, const char *where, json_t *message, json_t *whole,
                             bool *any, Error *e) {
    json_t *calls = json_object_get(message, "tool_calls"), *call = json_object_get(message, "function_call");
    *any = json_array_size(calls) || json_is_object(call);
    char field[200];
    snprintf(field, sizeof field, "%.120s.%s", where, json_array_size(calls) ? "tool_calls" : "function_call");
    if (!json_array_size(calls) && !json_is_object(call)) {
        if ((calls && !json_is_null(calls) && !json_is_array(calls)) || (call && !json_is_null(call)))
            return jsonl_error(j, field, e, "is %s, expected a call", jsonl_type(calls ? calls : call));
        return true;
    }
    if (!c->model)
        return jsonl_error(j, field, e,
                           "only a model's own template can write tool_calls; give one with --model or "
                           "--chat-template-path");
    if (!row_template_has(c, "tool_calls"))
        return jsonl_error(j, field, e, "this chat template does not write tool_calls, so the call would be lost");
    if (!json_array_size(calls)) {
        json_object_del(whole, "function_call");
        json_object_set_new(whole, "tool_calls", json_pack("[{s:s,s:O}]", "type", "function", "function", call));
    }
    return true;
}

/* Reads the call of ShareGPT's role function_call: {name, arguments} or a list of such, as a text or as JSON. */
static inline bool row_function_call(const ChatTemplate *c, const Jsonl *j, const char *where, json_t *said,
                                     json_t *whole, Error *e) {
    json_t *value = json_is_string(said) ? json_loads(json_string_value(said), 0, NULL) : json_incref(said);
    json_t *list = json_is_array(value) ? json_incref(value)
                   : value              ? json_pack("[O]", value)
                                        : NULL,
           *calls = json_array();
    size_t i;
    json_t *call;
    bool ok = json_array_size(list) > 0;
    json_array_foreach(list, i, call) {
        ok = ok && json_is_string(json_object_get(call, "name"));
        json_array_append_new(calls, json_pack("{s:s,s:O}", "type", "function", "function", call));
    }
    if (!ok) jsonl_error(j, where, e, "a message of role function_call is not a call {name, arguments} as JSON");
    else if (!c->model || !row_template_has(c, "tool_calls"))
        ok = jsonl_error(j, where, e,
                         "a message of role function_call can be written only by a model's own template that has "
                         "tool_calls; give one with --model or --chat-template-path");
    if (ok) {
        json_object_set(whole, "tool_calls", calls);
        json_object_set_new(whole, "content", json_string(""));
    }
    json_decref(value), json_decref(list), json_decref(calls);
    return ok;
}

/* Writes the reasoning of a message before its content if the template does not. */
static inline bool row_reasoning(const ChatTemplate *c, const Jsonl *j, const char *where, json_t *message,
                                 json_t *whole, TextBuffer *content, bool *written, Error *e) {
    for (int i = 0; i < 3; i++) {
        const char *name = row_reasoning_names[i];
        const json_t *value = json_object_get(message, name);
        if (!value || json_is_null(value) || (json_is_string(value) && !json_string_length(value))) continue;
        if (row_template_has(c, "reasoning_content") || row_template_has(c, "thinking") ||
            row_template_has(c, "reasoning"))
            return true;
        char field[200];
        snprintf(field, sizeof field, "%.120s.%s", where, name);
        if (row_has_calls(json_object_get(whole, "content")))
            return jsonl_error(j, field, e, "cannot be written before a content with parts of type python");
        const char *text = jsonl_value_text(j, value, field, e);
        if (!text) return false;
        TextBuffer both = {0};
        text_format(&both, "<think>\n%s\n</think>\n\n%s", text, content->text);
        text_clear(content);
        text_append(content, both.text, both.length);
        text_free(&both);
        for (int k = 0; k < 3; k++) json_object_del(whole, row_reasoning_names[k]);
        json_object_set_new(whole, "content", json_string(content->text));
        *written = true;
        return true;
    }
    return true;
}

/* Notes the fields of a message that neither this file nor the template reads. */
static inline void row_message_unread(RowFields *f, const ChatTemplate *c, json_t *message) {
    static const char *const read[] = {"role", "from", "content", "value", "tool_calls", "function_call"};
    const char *key;
    json_t *value;
    json_object_foreach(message, key, value) {
        if (json_is_null(value) || ROW_NAMED(key, read) || ROW_NAMED(key, row_flag_names) ||
            ROW_NAMED(key, row_reasoning_names) || row_template_has(c, key))
            continue;
        row_unread(f, "field '%.80s' of messages, which is not read", key);
    }
}

/* Reads message `message`. where: its place, for messages; content: a buffer. *thought: its reasoning was written. */
static inline bool row_one_message(RowFields *f, const ChatTemplate *c, const Jsonl *j, json_t *message,
                                   const char *where, TextBuffer *content, RowMessages *m, bool *thought, Error *e) {
    const json_t *role = row_role_of(message);
    json_t *said = json_object_get(message, "content");
    if (!said) said = json_object_get(message, "value");
    if (!json_is_string(role)) return jsonl_error(j, where, e, "has no string in 'role'");
    const char *speaker = jsonl_value_text(j, role, where, e);
    if (!speaker) return false;
    const char *usual = row_role(c, speaker);
    char field[180];
    snprintf(field, sizeof field, "%.120s.content", where);
    json_t *whole = json_copy(message);
    json_object_del(whole, "from");
    json_object_del(whole, "value");
    if (said) json_object_set(whole, "content", said);
    bool calls = false, trained = true, ok = true;
    text_clear(content);
    if (!strcmp(usual, "assistant") && !strcasecmp(speaker, "function_call"))
        ok = calls = row_function_call(c, j, where, said, whole, e);
    else {
        ok = row_calls(c, j, where, message, whole, &calls, e);
        /* a call needs no content; a model's own template gets parts as they are */
        if (ok && !(calls && (!said || json_is_null(said)))) ok = row_content(c, j, usual, said, field, content, e);
    }
    ok = ok && row_flags(f, j, where, message, !strcmp(usual, "assistant"), whole, &trained, e) &&
         row_reasoning(c, j, where, message, whole, content, thought, e);
    if (ok) {
        row_check_role(f, c, usual);
        row_message_unread(f, c, message);
        row_message(m, usual, xstrndup(content->text, content->length), whole);
        if (!trained) m->flags[m->count - 1] |= CHAT_UNTRAINED, m->selected = true;
    }
    json_decref(whole);
    return ok;
}

/* ---- parts ----------------------------------------------------------------------------------------------------- */

/* Messages for a template with sections; those with calls in their content are divided into parts. */
typedef struct RowTurns {
    ChatMessage *items; /* (count) the texts belong to the RowMessages */
    uint8_t *flags;
    int count;
} RowTurns;

static inline void row_turns_free(RowTurns *t) {
    free(t->items);
    free(t->flags);
    *t = (RowTurns){0};
}

static inline void row_turns_add(RowTurns *t, const char *role, const char *content, int flags) {
    t->items = (ChatMessage *)xrealloc(t->items, (size_t)t->count + 1, sizeof *t->items);
    t->flags = (uint8_t *)xrealloc(t->flags, (size_t)t->count + 1, 1);
    t->items[t->count] = (ChatMessage){role, content};
    t->flags[t->count++] = (uint8_t)flags;
}

/* Adds the parts of an assistant's content: texts, each encoded by itself, and calls with their results. flags: of the
 * message. */
static inline void row_turns_parts(RowTurns *t, const json_t *content, int flags) {
    const int untrained = flags & CHAT_UNTRAINED;
    const size_t n = json_array_size(content);
    if (row_is_call(json_array_get(content, 0))) row_turns_add(t, "assistant", "", CHAT_CONTINUED | untrained);
    for (size_t i = 0; i < n; i++) {
        const json_t *part = json_array_get(content, i);
        const char *text = json_string_value(json_is_string(part) ? part : json_object_get(part, "text"));
        if (row_is_call(part))
            row_turns_add(t, json_string_value(json_object_get(part, "type")), text, CHAT_PART | untrained);
        else row_turns_add(t, "assistant", text, i + 1 < n ? CHAT_CONTINUED | untrained : flags);
    }
    if (row_is_call(json_array_get(content, n - 1))) row_turns_add(t, "assistant", "", flags);
}

/* The first `count` messages as a template with sections writes them. If it has a section for calls, or the content has
 * results, each part of an assistant's content is encoded by itself, as nanochat does. The caller frees them with
 * row_turns_free(). */
static inline RowTurns row_turns(const RowMessages *m, const ChatTemplate *c, int count) {
    RowTurns t = {0};
    for (int i = 0; i < count; i++) {
        const json_t *content = json_object_get(json_array_get(m->list, (size_t)i), "content");
        const bool parts = chat_part_section(c, "python") || row_has_calls(content);
        if (parts && row_said_by_assistant(m, i) && json_array_size(content)) row_turns_parts(&t, content, m->flags[i]);
        else row_turns_add(&t, m->items[i].role, m->items[i].content, m->flags[i]);
    }
    return t;
}

/* ---- lists ----------------------------------------------------------------------------------------------------- */

/* Appends the messages of `value`: a list of messages, one message, or a text, which becomes one message of `role`.
 * The names of roles belong to the row or are constants. */
static inline bool row_messages(RowFields *f, const ChatTemplate *c, const Jsonl *j, json_t *value, const char *field,
                                const char *role, RowMessages *m, bool *thought, Error *e) {
    TextBuffer content = {0};
    bool ok = true;
    if (!json_is_array(value) && !json_is_object(value)) {
        const char *text = jsonl_value_text(j, value, field, e);
        if (text) row_message(m, role, xstrdup(text), NULL);
        return text != NULL;
    }
    if (json_is_object(value)) ok = row_one_message(f, c, j, value, field, &content, m, thought, e);
    for (size_t i = 0; ok && i < json_array_size(value); i++) {
        char where[160];
        snprintf(where, sizeof where, "%.100s[%zu]", field, i);
        if (!json_is_object(json_array_get(value, i)))
            ok = jsonl_error(j, field, e, "message %zu is %s, expected {role, content}", i,
                             jsonl_type(json_array_get(value, i)));
        else ok = row_one_message(f, c, j, json_array_get(value, i), where, &content, m, thought, e);
    }
    text_free(&content);
    if (ok && json_is_array(value) && !json_array_size(value))
        return jsonl_error(j, field, e, "is an empty list, expected messages");
    return ok;
}

/* Appends the turns of a history: a list of [user, assistant]. */
static inline bool row_history(const Jsonl *j, const json_t *history, const char *field, RowMessages *m, Error *e) {
    size_t i;
    json_t *turn;
    if (!json_is_array(history))
        return jsonl_error(j, field, e, "is %s, expected a list of [user, assistant]", jsonl_type(history));
    json_array_foreach(history, i, turn) {
        const char *user = jsonl_value_text(j, json_array_get(turn, 0), field, e),
                   *assistant = user ? jsonl_value_text(j, json_array_get(turn, 1), field, e) : NULL;
        if (!assistant || json_array_size(turn) != 2)
            return jsonl_error(j, field, e, "turn %zu is not [user, assistant], two texts", i);
        row_message(m, "user", xstrdup(user), NULL);
        row_message(m, "assistant", xstrdup(assistant), NULL);
    }
    return true;
}

#endif
