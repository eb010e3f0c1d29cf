/* rows.h - conversion of a line of JSONL to a record of a shard, for make_shard.
 *
 *   kind         fields of the line                            record
 *   chat         messages                                      the conversation, masked to the assistant's turns
 *                prompt + completion                           the same, with two turns
 *   prompt       prompt (+ answer, task, anything else)        the prompt, up to the start of the completion
 *   preference   prompt + chosen + rejected (+ margin)         the prompt and both completions
 *                chosen + rejected                             the same; the prompt is their common beginning
 *   step         prompt + completions[] + labels[]             a step-by-step solution, a label at the end of each step
 *   unpaired     prompt + completion + label                   a completion that is good (true, 1) or bad (false, 0)
 *   text         text                                          a document
 *
 * A prompt, completion, chosen or rejected is a text or a list of messages. A message is {role, content} or ShareGPT's
 * {from, value}; its content is a text or a list of {type: "text", text}. A model's own template gets messages as they
 * are, with tool_calls and other fields, and the tools of the line: a list of JSON schemas, or a text with one. A
 * field's name may be a path, such as "a.b.0".
 *
 * If such a template writes old turns differently from the last one (Qwen3 leaves out their thinking), a line of kind
 * chat becomes one record for each of the assistant's messages, with the messages before it.
 */
#ifndef DATA_ROWS_H
#define DATA_ROWS_H

#include "../llmc/base/error.h"     /* Error, xstrdup, xrealloc, xstrndup */
#include "../llmc/base/jsonl.h"     /* Jsonl, jsonl_error, jsonl_value_text, jsonl_type */
#include "../llmc/base/text.h"      /* TextBuffer, text_clear, text_string, text_free, ... */
#include "../llmc/records/shard.h"  /* Record */
#include "../llmc/text/chat.h"      /* ChatMessage, ChatTemplate, chat_encode, chat_encode_conversation, ... */
#include "../llmc/text/tokenizer.h" /* tokenizer_encode, TOKENIZER_CONTINUES, TOKENIZER_DOCUMENT, Tokenizer, ... */

typedef enum { ROW_AUTO, ROW_CHAT, ROW_PROMPT, ROW_PREFERENCE, ROW_STEP, ROW_UNPAIRED, ROW_TEXT } RowKind;
typedef enum { TRUNCATE_END, TRUNCATE_DROP, TRUNCATE_ERROR } RowTruncation;

/* A warning about the data: number of occurrences and location of the first. */
typedef struct RowCount {
    int64_t count;
    char first[128]; /* file and line */
} RowCount;

typedef struct Rows {
    const char *messages, *prompt, *completion, *answer, *task, *chosen, *rejected, *margin, *completions, *labels,
        *label, *text, *tools;                                       /* names of fields */
    const char *task_name;                                           /* for lines without a task, or NULL */
    const char *answer_after, *system, *prompt_end, *step_separator; /* NULL: none */
    int64_t max_tokens;                                              /* 0: no limit */
    RowTruncation truncation;
    RowKind kind;
    Tokenizer tokenizer;
    ChatTemplate chat;
    int32_t stop;
    bool train_all; /* kind chat: the mask is 1 on all tokens */
    RowCount too_long, truncated, no_mask, special_text, stop_text, space_before, equal, no_answer, split, no_tools,
        text_arguments;

    /* the current record; its buffers are reused */
    TokenList ids;
    uint8_t *mask;
    TextBuffer key; /* hashed to choose the training or validation split */
    TextBuffer text_of_prompt, text_of_answer;
    char *fields;
    Record record;
    bool more; /* row_make() has another record of the same line */
    int turn;  /* message from which it searches for the next turn */
} Rows;

static inline void rows_free(Rows *r) {
    tokenizer_free(&r->tokenizer);
    chat_template_free(&r->chat);
    token_list_free(&r->ids);
    free(r->mask);
    free(r->fields);
    text_free(&r->key);
    text_free(&r->text_of_prompt);
    text_free(&r->text_of_answer);
}

static inline void rows_note(RowCount *c, const Jsonl *j) {
    if (!c->count++) snprintf(c->first, sizeof c->first, "%.90s, line %lld", j->name, (long long)j->line);
}

/* ---- fields ---------------------------------------------------------------------------------------------------- */

/* Returns the value of a field, looked up by name, else as a path of names and list indices separated by dots. NULL if
 * it is absent or null. */
static inline json_t *row_get(json_t *row, const char *name) {
    json_t *value = json_object_get(row, name);
    if (!value && strchr(name, '.')) {
        value = row;
        for (const char *rest = name; value && rest;) {
            char *part = xstrndup(rest, strcspn(rest, "."));
            value =
                json_is_array(value) ? json_array_get(value, strtoul(part, NULL, 10)) : json_object_get(value, part);
            free(part);
            rest = strchr(rest, '.');
            if (rest) rest++;
        }
    }
    return json_is_null(value) ? NULL : value;
}

/* Returns the conversation of a line. Unless the user chose a field name, ShareGPT's "conversations" is also
 * accepted. */
static inline json_t *row_get_messages(const Rows *r, json_t *row) {
    json_t *messages = row_get(row, r->messages);
    return messages || strcmp(r->messages, "messages") ? messages : row_get(row, "conversations");
}

/* Returns the value of a label (true, false or an integer from 0 to `most`), or -1 for anything else. */
static inline int row_label(const json_t *label, int most) {
    if (json_is_boolean(label)) return json_is_true(label);
    const json_int_t value = json_is_integer(label) ? json_integer_value(label) : -1;
    return value >= 0 && value <= most ? (int)value : -1;
}

/* Infers the kind of a line from its fields. */
static inline RowKind row_kind(const Rows *r, json_t *row) {
    if (row_get_messages(r, row)) return ROW_CHAT;
    if (row_get(row, r->chosen) && row_get(row, r->rejected)) return ROW_PREFERENCE;
    if (row_get(row, r->prompt)) {
        if (row_get(row, r->completions) && row_get(row, r->labels)) return ROW_STEP;
        if (row_get(row, r->completion) && row_label(row_get(row, r->label), 1) >= 0) return ROW_UNPAIRED;
        return row_get(row, r->completion) ? ROW_CHAT : ROW_PROMPT;
    }
    return row_get(row, r->text) ? ROW_TEXT : ROW_AUTO;
}

/* Appends a value to `out`: a text as it is, any other value as JSON. */
static inline bool row_scalar(const Jsonl *j, json_t *value, const char *field, TextBuffer *out, Error *e) {
    if (json_is_string(value)) {
        const char *text = jsonl_value_text(j, value, field, e);
        if (text) text_string(out, text);
        return text != NULL;
    }
    char *dump = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15));
    if (!dump) return jsonl_error(j, field, e, "cannot be written as JSON");
    text_string(out, dump);
    free(dump);
    return true;
}

/* ---- messages -------------------------------------------------------------------------------------------------- */

typedef struct RowMessages {
    ChatMessage *items; /* for templates with sections */
    int count;
    json_t *list; /* the same messages with all fields, for a model's own template */
} RowMessages;

static inline void row_messages_free(RowMessages *m) {
    for (int i = 0; i < m->count; i++) free((char *)m->items[i].content);
    free(m->items);
    json_decref(m->list);
    *m = (RowMessages){0};
}

/* Adds a message. `role` must outlive the list; the list takes ownership of `content`. whole: all its fields, or NULL
 * if it has only these. */
static inline void row_message(RowMessages *m, const char *role, char *content, json_t *whole) {
    m->items = (ChatMessage *)xrealloc(m->items, (size_t)m->count + 1, sizeof *m->items);
    m->items[m->count++] = (ChatMessage){role, content};
    json_t *message = whole ? json_copy(whole) : json_object();
    json_object_set_new(message, "role", json_string(role));
    if (!whole) json_object_set_new(message, "content", json_string(content));
    if (!m->list) m->list = json_array();
    json_array_append_new(m->list, message);
}

/* Appends the messages of another list. */
static inline void row_messages_join(RowMessages *m, const RowMessages *more) {
    for (int i = 0; i < more->count; i++)
        row_message(m, more->items[i].role, xstrdup(more->items[i].content), json_array_get(more->list, (size_t)i));
}

/* Reads a message's content into `out`: a text or a list of {type: "text", text}. */
static inline bool row_content(const Jsonl *j, json_t *content, const char *field, TextBuffer *out, Error *e) {
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
        if (type && strcmp(type, "text"))
            return jsonl_error(j, field, e, "part %zu is of type '%.40s', expected text", i, type);
        const char *text = jsonl_value_text(j, json_object_get(part, "text"), field, e);
        if (!text) return false;
        text_string(out, text);
    }
    return true;
}

/* Maps ShareGPT's role names to the usual ones. */
static inline const char *row_role(const char *role) {
    if (!strcmp(role, "human")) return "user";
    return !strcmp(role, "gpt") || !strcmp(role, "model") ? "assistant" : role;
}

/* Reads a message of a list. */
static inline bool row_one_message(const Rows *r, const Jsonl *j, json_t *message, const char *speaker,
                                   const char *field, TextBuffer *content, RowMessages *m, Error *e) {
    json_t *said = json_object_get(message, "content"), *calls = json_object_get(message, "tool_calls");
    const bool whole = said || !json_object_get(message, "value");
    text_clear(content);
    if (!r->chat.model && json_array_size(calls))
        return jsonl_error(j, field, e,
                           "the message has tool_calls, which only a model's own template can write; see "
                           "--chat-template-path");
    /* a model's own template gets any content, such as none next to tool_calls */
    if (!r->chat.model || !whole || json_is_string(said)) {
        if (!row_content(j, said ? said : json_object_get(message, "value"), field, content, e)) return false;
    } else if (json_is_array(said) && !row_content(j, said, field, content, NULL)) text_clear(content);
    row_message(m, row_role(speaker), xstrndup(content->text, content->length), whole ? message : NULL);
    return true;
}

/* Appends the messages of `value`: a list of messages, or a text, which becomes one message of `role`. */
static inline bool row_messages(const Rows *r, const Jsonl *j, json_t *value, const char *field, const char *role,
                                RowMessages *m, Error *e) {
    TextBuffer content = {0};
    bool ok = true;
    if (!json_is_array(value)) {
        const char *text = jsonl_value_text(j, value, field, e);
        if (text) row_message(m, role, xstrdup(text), NULL);
        return text != NULL;
    }
    for (size_t i = 0; ok && i < json_array_size(value); i++) {
        json_t *message = json_array_get(value, i), *named = json_object_get(message, "role");
        char where[160];
        snprintf(where, sizeof where, "%.100s[%zu].content", field, i);
        named = named ? named : json_object_get(message, "from");
        if (!json_is_string(named)) {
            ok = jsonl_error(j, field, e, "message %zu has no string in 'role'", i);
            break;
        }
        const char *speaker = jsonl_value_text(j, named, field, e);
        if (!speaker) {
            ok = false;
            break;
        }
        ok = row_one_message(r, j, message, speaker, where, &content, m, e);
    }
    text_free(&content);
    if (ok && !json_array_size(value)) return jsonl_error(j, field, e, "is an empty list, expected messages");
    return ok;
}

/* Appends the messages before a completion: those of the prompt, after the --system message if they have none of their
 * own. */
static inline bool row_prompt(const Rows *r, const Jsonl *j, json_t *prompt, const char *field, RowMessages *m,
                              Error *e) {
    const bool own = json_is_array(prompt) && json_array_size(prompt) &&
                     json_is_string(json_object_get(json_array_get(prompt, 0), "role")) &&
                     !strcmp(json_string_value(json_object_get(json_array_get(prompt, 0), "role")), "system");
    if (r->system && !own) row_message(m, "system", xstrdup(r->system), NULL);
    return row_messages(r, j, prompt, field, "user", m, e);
}

/* Whether the arguments of a tool call of message i are a text. */
static inline bool row_text_arguments(const RowMessages *m, int i) {
    const json_t *calls = json_object_get(json_array_get(m->list, (size_t)i), "tool_calls");
    for (size_t k = 0; k < json_array_size(calls); k++) {
        const json_t *call = json_array_get(calls, k), *function = json_object_get(call, "function");
        if (json_is_string(json_object_get(function ? function : call, "arguments"))) return true;
    }
    return false;
}

/* Counts contents that are probably mistakes and would mislead the model. */
static inline void row_check_messages(Rows *r, const Jsonl *j, const RowMessages *m) {
    /* a template without text between prompt and completion; GPT-2's tokens include the space before a word */
    const bool model = r->chat.model != NULL;
    const bool adjoining = !model && r->tokenizer.merge_count && !chat_section(&r->chat, "assistant")->prefix.count;
    for (int i = 0; i < m->count; i++) {
        size_t at = 0;
        const char *content = m->items[i].content;
        const size_t n = strlen(content);
        const bool answer = !strcmp(m->items[i].role, "assistant");
        if (row_text_arguments(m, i)) rows_note(&r->text_arguments, j);
        if (tokenizer_find_special(&r->tokenizer, content, n, &at) >= 0) rows_note(&r->special_text, j);
        if (adjoining && !answer && n && content[n - 1] == ' ' &&
            (i + 1 == m->count || !strcmp(m->items[i + 1].role, "assistant")))
            rows_note(&r->space_before, j);
        if (answer && !model && *r->chat.stop && !r->tokenizer.special[r->stop] && strstr(content, r->chat.stop))
            rows_note(&r->stop_text, j);
    }
}

/* Sets the split key of a conversation: all messages before the first completion. */
static inline void row_key(Rows *r, const RowMessages *m) {
    for (int i = 0; i < m->count && strcmp(m->items[i].role, "assistant"); i++) {
        text_append(&r->key, m->items[i].role, strlen(m->items[i].role) + 1);
        text_append(&r->key, m->items[i].content, strlen(m->items[i].content) + 1);
    }
}

/* ---- records --------------------------------------------------------------------------------------------------- */

typedef enum { ROW_BAD, ROW_DROPPED, ROW_MADE } RowResult;

/* Rejects or drops a record that is longer than the limit and may not or cannot be truncated. */
static inline RowResult row_too_long(Rows *r, const Jsonl *j, int64_t tokens, const char *what, Error *e) {
    if (r->truncation == TRUNCATE_ERROR) {
        jsonl_error(j, NULL, e, "%s has %lld tokens, --max-tokens is %lld", what, (long long)tokens,
                    (long long)r->max_tokens);
        return ROW_BAD;
    }
    rows_note(&r->too_long, j);
    return ROW_DROPPED;
}

/* Returns a conversation of the first `count` messages in JSON, with the tools of the line; NULL if these are
 * invalid. */
static inline json_t *row_conversation(const Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, int count,
                                       Error *e) {
    json_t *tools = r->tools ? row_get(row, r->tools) : NULL, *some = json_array();
    tools = json_is_string(tools) ? json_loads(json_string_value(tools), 0, NULL) : json_incref(tools);
    if (r->tools && row_get(row, r->tools) && !json_is_array(tools)) {
        json_decref(tools);
        json_decref(some);
        return jsonl_error(j, r->tools, e, "is neither a list of tools nor a text with one"), NULL;
    }
    for (int i = 0; i < count; i++) json_array_append(some, json_array_get(m->list, (size_t)i));
    return json_pack("{s:o,s:o}", "messages", some, "tools", tools ? tools : json_null());
}

/* Encodes the first `count` messages by the template. last, together: see chat_encode_conversation(). */
static inline bool row_encode(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, int count, bool prompt,
                              bool last, TokenList *ids, uint8_t **mask, bool *together, Error *e) {
    Error inner;
    bool ok;
    if (together) *together = true;
    if (r->chat.model) {
        json_t *conversation = row_conversation(r, j, row, m, count, e);
        if (!conversation) return false;
        ok = chat_encode_conversation(&r->chat, &r->tokenizer, conversation, prompt, last, ids, mask, together, &inner);
        json_decref(conversation);
    } else {
        if (r->tools && row_get(row, r->tools)) rows_note(&r->no_tools, j);
        ok = chat_encode(&r->chat, &r->tokenizer, m->items, count, prompt, ids, mask, &inner);
    }
    return ok || jsonl_error(j, NULL, e, "%s", inner.text);
}

/* Returns the next message of the assistant, from message i on, or m->count. */
static inline int row_next_turn(const RowMessages *m, int i) {
    while (i < m->count && strcmp(m->items[i].role, "assistant")) i++;
    return i;
}

/* Encodes a conversation, or the next turn of one whose turns need records of their own. */
static inline bool row_encode_chat(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, Error *e) {
    bool together = true;
    if (!r->more) {
        if (!row_encode(r, j, row, m, m->count, false, false, &r->ids, &r->mask, &together, e)) return false;
        if (together) return true;
        rows_note(&r->split, j);
        r->turn = 0;
    }
    const int turn = row_next_turn(m, r->turn);
    r->ids.count = 0;
    r->turn = turn + 1;
    r->more = row_next_turn(m, turn + 1) < m->count;
    return row_encode(r, j, row, m, turn + 1, false, true, &r->ids, &r->mask, NULL, e);
}

static inline RowResult row_chat(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, Error *e) {
    if (!row_encode_chat(r, j, row, m, e)) return ROW_BAD;
    if (r->train_all && r->ids.count) memset(r->mask, 1, (size_t)r->ids.count);
    row_key(r, m);
    row_check_messages(r, j, m);
    int32_t first = 0, count = r->ids.count;
    while (first < count && !r->mask[first]) first++;
    if (!count) {
        jsonl_error(j, NULL, e, "is an empty conversation");
        return ROW_BAD;
    }
    if (r->max_tokens && count > r->max_tokens) {
        if (r->truncation != TRUNCATE_END || first >= r->max_tokens)
            return row_too_long(r, j, count, "the conversation", e);
        rows_note(&r->truncated, j);
        count = (int32_t)r->max_tokens;
    }
    if (first == r->ids.count) rows_note(&r->no_mask, j);
    r->record = (Record){.tokens = r->ids.ids, .mask = r->mask, .count = count};
    return ROW_MADE;
}

static inline RowResult row_chat_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    RowMessages m = {0};
    json_t *messages = row_get_messages(r, row);
    if (messages && !json_is_array(messages)) {
        jsonl_error(j, r->messages, e, "is %s, expected a list of messages", jsonl_type(messages));
        return ROW_BAD;
    }
    const bool ok = messages ? row_prompt(r, j, messages, r->messages, &m, e)
                             : row_prompt(r, j, row_get(row, r->prompt), r->prompt, &m, e) &&
                                   row_messages(r, j, row_get(row, r->completion), r->completion, "assistant", &m, e);
    const RowResult result = ok ? row_chat(r, j, row, &m, e) : ROW_BAD;
    row_messages_free(&m);
    return result;
}

/* Encodes the messages before the completion. */
static inline bool row_encode_prompt(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, Error *e) {
    if (!row_encode(r, j, row, m, m->count, true, false, &r->ids, NULL, NULL, e)) return false;
    row_key(r, m);
    row_check_messages(r, j, m);
    return r->ids.count > 0 || jsonl_error(j, r->prompt, e, "is empty");
}

/* Reads the reference answer; with --answer-after, only the part after its last occurrence. */
static inline bool row_answer(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    json_t *answer = row_get(row, r->answer);
    text_clear(&r->text_of_answer);
    if (!answer) return true;
    if (!row_scalar(j, answer, r->answer, &r->text_of_answer, e)) return false;
    if (!r->answer_after) return true;
    const char *found = NULL, *text = r->text_of_answer.text;
    for (const char *s = text; (s = strstr(s, r->answer_after)); s += strlen(r->answer_after))
        found = s + strlen(r->answer_after);
    if (!found) return jsonl_error(j, r->answer, e, "does not contain '%.60s'", r->answer_after);
    found += strspn(found, " \t\r\n");
    size_t n = strlen(found);
    while (n && strchr(" \t\r\n", found[n - 1])) n--;
    memmove(r->text_of_answer.text, found, n);
    r->text_of_answer.length = n;
    r->text_of_answer.text[n] = 0;
    return true;
}

/* Appends the text of the prompt. */
static inline bool row_render_prompt(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, Error *e) {
    if (!r->chat.model) return chat_render(&r->chat, &r->tokenizer, m->items, m->count, true, &r->text_of_prompt, e);
    json_t *conversation = row_conversation(r, j, row, m, m->count, e);
    const bool ok = conversation && chat_render_conversation(&r->chat, conversation, true, &r->text_of_prompt, e);
    json_decref(conversation);
    return ok;
}

/* Returns the remaining fields of the line as a JSON object, or "". */
static inline const char *row_fields(Rows *r, json_t *row) {
    const char *known[] = {r->prompt, r->answer, r->task}, *key;
    json_t *others = json_copy(row), *value;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) json_object_del(others, known[i]);
    json_object_foreach(row, key, value) {
        if (json_is_null(value)) json_object_del(others, key);
    }
    free(r->fields);
    r->fields = json_object_size(others) ? json_dumps(others, JSON_COMPACT) : xstrdup("");
    json_decref(others);
    return r->fields;
}

static inline RowResult row_prompt_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    RowMessages m = {0};
    json_t *prompt = row_get(row, r->prompt), *named = row_get(row, r->task);
    const char *task = r->task_name ? r->task_name : "";
    bool ok =
        row_prompt(r, j, prompt, r->prompt, &m, e) && row_encode_prompt(r, j, row, &m, e) && row_answer(r, j, row, e);
    if (ok && named) {
        task = jsonl_value_text(j, named, r->task, e);
        ok = task != NULL;
    }
    text_clear(&r->text_of_prompt);
    if (ok && json_is_string(prompt)) text_string(&r->text_of_prompt, json_string_value(prompt));
    else if (ok) ok = row_render_prompt(r, j, row, &m, e);
    row_messages_free(&m);
    if (!ok) return ROW_BAD;
    if (r->max_tokens && r->ids.count > r->max_tokens) return row_too_long(r, j, r->ids.count, "the prompt", e);
    if (!r->text_of_answer.length && !*task) rows_note(&r->no_answer, j);
    r->record = (Record){.tokens = r->ids.ids,
                         .count = r->ids.count,
                         .prompt = r->ids.count,
                         .text = r->text_of_prompt.text,
                         .task = task,
                         .answer = r->text_of_answer.text,
                         .fields = row_fields(r, row)};
    return ROW_MADE;
}

/* ---- preferences ----------------------------------------------------------------------------------------------- */

/* Returns the length in bytes of the prompt that two texts share. If their common beginning contains `marker` (default
 * "\n\nAssistant:"), the prompt ends after the last occurrence. Otherwise it ends before the last white space of the
 * common beginning, so that no word or character is split. */
static inline size_t row_common_prefix(const char *a, const char *b, const char *marker) {
    size_t n = 0;
    while (a[n] && a[n] == b[n]) n++;
    const size_t length = strlen(marker);
    for (size_t i = n + 1; i-- > length;)
        if (!memcmp(a + i - length, marker, length)) return i;
    while (n && !strchr(" \t\r\n", a[n - 1])) n--;
    while (n && strchr(" \t\r\n", a[n - 1])) n--; /* the white space belongs to the completions */
    return n;
}

/* Splits chosen and rejected of a line without a usable prompt field into the messages of the prompt and of the
 * completions. */
static inline bool row_implicit(const Rows *r, const Jsonl *j, json_t *chosen, json_t *rejected, RowMessages *prompt,
                                RowMessages answer[2], Error *e) {
    if (json_is_array(chosen) && json_is_array(rejected)) {
        json_t *both = json_array();
        size_t n = 0;
        while (n < json_array_size(chosen) && n < json_array_size(rejected) &&
               json_equal(json_array_get(chosen, n), json_array_get(rejected, n)))
            json_array_append(both, json_array_get(chosen, n++));
        bool ok = n > 0 || jsonl_error(j, r->chosen, e, "and '%s' begin with different messages", r->rejected);
        ok = ok && row_prompt(r, j, both, r->chosen, prompt, e);
        json_t *list[2] = {chosen, rejected};
        for (int i = 0; ok && i < 2; i++) {
            json_t *rest = json_array();
            for (size_t k = n; k < json_array_size(list[i]); k++) json_array_append(rest, json_array_get(list[i], k));
            ok = row_messages(r, j, rest, i ? r->rejected : r->chosen, "assistant", &answer[i], e);
            json_decref(rest);
        }
        json_decref(both);
        return ok;
    }
    const char *a = jsonl_value_text(j, chosen, r->chosen, e),
               *b = a ? jsonl_value_text(j, rejected, r->rejected, e) : NULL;
    if (!a || !b) return false;
    const size_t n = row_common_prefix(a, b, r->prompt_end ? r->prompt_end : "\n\nAssistant:");
    if (!n)
        return jsonl_error(j, r->chosen, e, "and '%s' have no common beginning that could be the prompt", r->rejected);
    if (r->system) row_message(prompt, "system", xstrdup(r->system), NULL);
    row_message(prompt, "user", xstrndup(a, n), NULL);
    row_message(&answer[0], "assistant", xstrdup(a + n), NULL);
    row_message(&answer[1], "assistant", xstrdup(b + n), NULL);
    return true;
}

/* Appends the tokens of a completion, up to its stop token, to the prompt, which is already encoded to `before`
 * tokens. */
static inline bool row_append_answer(Rows *r, const Jsonl *j, json_t *row, const RowMessages *prompt,
                                     const RowMessages *answer, int32_t before, int32_t *length, Error *e) {
    RowMessages all = {0};
    TokenList ids = {0};
    uint8_t *mask = NULL;
    bool together = true;
    row_messages_join(&all, prompt);
    row_messages_join(&all, answer);
    bool ok = row_encode(r, j, row, &all, all.count, false, false, &ids, &mask, &together, e);
    const size_t bytes = (size_t)before * sizeof *ids.ids;
    if (ok && (ids.count < before || (before && memcmp(ids.ids, r->ids.ids, bytes))))
        ok = jsonl_error(j, NULL, e, "the chat template writes the prompt differently before a completion");
    if (ok && !together && answer->count > 1)
        ok = jsonl_error(j, NULL, e,
                         "the chat template writes some of the completion's messages differently once others "
                         "follow");
    int32_t end = ids.count;
    while (end > before && ok && !mask[end - 1]) end--;
    *length = end - before;
    if (ok && *length < 1) ok = jsonl_error(j, NULL, e, "has a completion without an assistant message");
    for (int32_t i = before; ok && i < end; i++) token_list_append(&r->ids, ids.ids[i]);
    row_messages_free(&all);
    token_list_free(&ids);
    free(mask);
    return ok;
}

/* Truncates both completions to the room that the limit leaves after the prompt. */
static inline RowResult row_cut_answers(Rows *r, const Jsonl *j, Record *p, Error *e) {
    const int64_t longest = p->prompt + (int64_t)(p->chosen > p->rejected ? p->chosen : p->rejected);
    if (!r->max_tokens || longest <= r->max_tokens) return ROW_MADE;
    if (r->truncation != TRUNCATE_END || p->prompt >= r->max_tokens)
        return row_too_long(r, j, longest, "the prompt with a completion", e);
    rows_note(&r->truncated, j);
    const int32_t room = (int32_t)r->max_tokens - p->prompt, was = p->chosen;
    if (p->chosen > room) p->chosen = room;
    if (p->rejected > room) p->rejected = room;
    int32_t *ids = r->ids.ids + p->prompt;
    memmove(ids + p->chosen, ids + was, (size_t)p->rejected * sizeof *ids);
    return ROW_MADE;
}

static inline RowResult row_preference(Rows *r, const Jsonl *j, json_t *row, const RowMessages *prompt,
                                       const RowMessages answer[2], double margin, Error *e) {
    Record p = {.margin = (float)margin};
    if (!row_encode_prompt(r, j, row, prompt, e)) return ROW_BAD;
    p.prompt = r->ids.count;
    row_check_messages(r, j, &answer[0]);
    row_check_messages(r, j, &answer[1]);
    if (!row_append_answer(r, j, row, prompt, &answer[0], p.prompt, &p.chosen, e) ||
        !row_append_answer(r, j, row, prompt, &answer[1], p.prompt, &p.rejected, e))
        return ROW_BAD;
    const RowResult result = row_cut_answers(r, j, &p, e);
    if (result != ROW_MADE) return result;
    const int32_t *ids = r->ids.ids + p.prompt;
    if (p.chosen == p.rejected && !memcmp(ids, ids + p.chosen, (size_t)p.chosen * sizeof *ids)) {
        rows_note(&r->equal, j);
        return ROW_DROPPED;
    }
    p.tokens = r->ids.ids;
    p.count = p.prompt + p.chosen + p.rejected;
    r->record = p;
    return ROW_MADE;
}

static inline RowResult row_preference_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    RowMessages prompt = {0}, answer[2] = {{0}, {0}};
    json_t *before = row_get(row, r->prompt), *chosen = row_get(row, r->chosen), *rejected = row_get(row, r->rejected),
           *margin = row_get(row, r->margin);
    const bool lists = json_is_array(chosen) && json_is_array(rejected);
    bool ok = true;
    if (margin && !json_is_number(margin))
        ok = jsonl_error(j, r->margin, e, "is %s, expected a number", jsonl_type(margin));
    /* if chosen and rejected are whole conversations, a prompt that is a text only repeats their beginning */
    else if (!before || (lists && !json_is_array(before)))
        ok = row_implicit(r, j, chosen, rejected, &prompt, answer, e);
    else
        ok = row_prompt(r, j, before, r->prompt, &prompt, e) &&
             row_messages(r, j, chosen, r->chosen, "assistant", &answer[0], e) &&
             row_messages(r, j, rejected, r->rejected, "assistant", &answer[1], e);
    const RowResult result = ok ? row_preference(r, j, row, &prompt, answer, json_number_value(margin), e) : ROW_BAD;
    row_messages_free(&prompt);
    row_messages_free(&answer[0]);
    row_messages_free(&answer[1]);
    return result;
}

/* ---- steps ----------------------------------------------------------------------------------------------------- */

/* Encodes the steps after the prompt, up to the first step that exceeds the limit. */
static inline RowResult row_steps(Rows *r, const Jsonl *j, const json_t *steps, const json_t *labels, Error *e) {
    const int32_t prompt = r->ids.count;
    Error inner;
    r->mask = (uint8_t *)xrealloc(r->mask, (size_t)prompt, 1);
    memset(r->mask, 0, (size_t)prompt);
    for (size_t i = 0; i < json_array_size(steps); i++) {
        const int32_t before = r->ids.count;
        const int label = row_label(json_array_get(labels, i), 254);
        const char *step = jsonl_value_text(j, json_array_get(steps, i), r->completions, e);
        if (!step) return ROW_BAD;
        if (label < 0) {
            jsonl_error(j, r->labels, e, "label %zu is neither true, false nor a whole number from 0 to 254", i);
            return ROW_BAD;
        }
        if (!tokenizer_encode(&r->tokenizer, step, strlen(step), TOKENIZER_CONTINUES, &r->ids, &inner) ||
            !tokenizer_encode(&r->tokenizer, r->step_separator, strlen(r->step_separator), TOKENIZER_CONTINUES, &r->ids,
                              &inner)) {
            jsonl_error(j, r->completions, e, "%s", inner.text);
            return ROW_BAD;
        }
        if (r->ids.count == before) {
            jsonl_error(j, r->completions, e, "step %zu is empty", i);
            return ROW_BAD;
        }
        if (r->max_tokens && r->ids.count > r->max_tokens) {
            if (r->truncation != TRUNCATE_END || !i) return row_too_long(r, j, r->ids.count, "the solution", e);
            rows_note(&r->truncated, j);
            r->ids.count = before;
            break;
        }
        r->mask = (uint8_t *)xrealloc(r->mask, (size_t)r->ids.count, 1);
        memset(r->mask + before, 0, (size_t)(r->ids.count - before));
        r->mask[r->ids.count - 1] = (uint8_t)(label + 1);
    }
    r->record = (Record){.tokens = r->ids.ids, .mask = r->mask, .count = r->ids.count, .prompt = prompt};
    return ROW_MADE;
}

static inline RowResult row_step_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    RowMessages m = {0};
    const json_t *steps = row_get(row, r->completions), *labels = row_get(row, r->labels);
    bool ok = row_prompt(r, j, row_get(row, r->prompt), r->prompt, &m, e) && row_encode_prompt(r, j, row, &m, e);
    if (ok && (!json_is_array(steps) || !json_array_size(steps)))
        ok = jsonl_error(j, r->completions, e, "is %s, expected a list of steps",
                         json_is_array(steps) ? "an empty list" : jsonl_type(steps));
    if (ok && (!json_is_array(labels) || json_array_size(labels) != json_array_size(steps)))
        ok = jsonl_error(j, r->labels, e, "is not a list of %zu labels, one for each step", json_array_size(steps));
    row_messages_free(&m);
    return ok ? row_steps(r, j, steps, labels, e) : ROW_BAD;
}

/* ---- unpaired -------------------------------------------------------------------------------------------------- */

static inline RowResult row_unpaired(Rows *r, const Jsonl *j, json_t *row, const RowMessages *prompt,
                                     const RowMessages *answer, int label, Error *e) {
    int32_t length;
    if (!row_encode_prompt(r, j, row, prompt, e)) return ROW_BAD;
    Record p = {.prompt = r->ids.count, .label = label};
    row_check_messages(r, j, answer);
    if (!row_append_answer(r, j, row, prompt, answer, p.prompt, &length, e)) return ROW_BAD;
    p.tokens = r->ids.ids;
    p.count = r->ids.count;
    if (r->max_tokens && p.count > r->max_tokens) {
        if (r->truncation != TRUNCATE_END || p.prompt >= r->max_tokens)
            return row_too_long(r, j, p.count, "the prompt with its completion", e);
        rows_note(&r->truncated, j);
        p.count = (int32_t)r->max_tokens;
    }
    r->record = p;
    return ROW_MADE;
}

static inline RowResult row_unpaired_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    RowMessages prompt = {0}, answer = {0};
    const json_t *label = row_get(row, r->label);
    const int good = row_label(label, 1);
    bool ok = good >= 0;
    if (!ok) jsonl_error(j, r->label, e, "is %s, expected true or false (or 1, 0)", jsonl_type(label));
    ok = ok && row_prompt(r, j, row_get(row, r->prompt), r->prompt, &prompt, e) &&
         row_messages(r, j, row_get(row, r->completion), r->completion, "assistant", &answer, e);
    const RowResult result = ok ? row_unpaired(r, j, row, &prompt, &answer, good, e) : ROW_BAD;
    row_messages_free(&prompt);
    row_messages_free(&answer);
    return result;
}

/* ---- any line -------------------------------------------------------------------------------------------------- */

/* Sets r->ids to a document: its text after bos, if the tokenizer adds that, or after the end-of-text token, which
 * separates documents of GPT-2. */
static inline bool row_document(Rows *r, const char *text, size_t n, Error *e) {
    r->ids.count = 0;
    if (!r->tokenizer.add_bos) token_list_append(&r->ids, r->tokenizer.eos);
    return tokenizer_encode(&r->tokenizer, text, n, r->tokenizer.add_bos ? TOKENIZER_DOCUMENT : 0, &r->ids, e);
}

static inline RowResult row_text_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    const char *text = jsonl_value_text(j, row_get(row, r->text), r->text, e);
    if (!text) return ROW_BAD;
    text_string(&r->key, text);
    return row_document(r, text, strlen(text), e) ? ROW_MADE : ROW_BAD;
}

/* Converts a line to r->record and r->key; a line of kind text to r->ids, after the end-of-text token. Sets *e on
 * ROW_BAD. If r->more is true afterwards, the next call with the same line makes its next record. */
static inline RowResult row_make(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    RowResult result;
    r->ids.count = 0;
    text_clear(&r->key);
    switch (r->kind) {
    case ROW_CHAT:
        result = row_chat_line(r, j, row, e);
        if (result == ROW_BAD) r->more = false;
        return result;
    case ROW_PROMPT: return row_prompt_line(r, j, row, e);
    case ROW_PREFERENCE: return row_preference_line(r, j, row, e);
    case ROW_STEP: return row_step_line(r, j, row, e);
    case ROW_UNPAIRED: return row_unpaired_line(r, j, row, e);
    default: return row_text_line(r, j, row, e);
    }
}

#endif
