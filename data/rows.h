/* rows.h - conversion of a row, a line of JSONL, to a record of a shard, for make_shard.
 *
 *   kind         the row                                       record
 *   chat         messages                                      the conversation, masked to the assistant's turns
 *                prompt or messages + completion               the same, masked to the completion
 *   prompt       prompt or messages (+ answer, anything else)  the prompt, up to the start of the completion
 *   preference   prompt or messages + chosen + rejected        the prompt and both completions
 *                chosen + rejected                             the same; the prompt is their common beginning
 *                prompt or messages + completions[]            a ranking: the completions from the best to the worst
 *                ... + reference                               the same with a gold answer
 *   step         prompt or messages + completions[] + labels[] a step-by-step solution, a label at the end of each step
 *   unpaired     prompt or messages + completion + label       a completion that is good (true, 1) or bad (false, 0)
 *                messages + label                              the same; the completion is the last message
 *   text         text                                          a document
 *
 * row_fields.h has the names of these fields, row_messages.h what a message may have. A prompt, completion, chosen or
 * rejected is a text, a message or a list of messages. A prompt that ends with the assistant's message is continued:
 * its turn does not end before the completion. A prompt record keeps the fields of the row that nothing reads, for
 * verifiers and reward programs, and the messages of its prompt, so that it can be made again; other kinds of records
 * name them.
 *
 * If a model's own template writes old turns differently from the last one (Qwen3 leaves out their thinking), a row of
 * kind chat becomes one record for each of the assistant's trained messages, with the messages before it.
 */
#ifndef DATA_ROWS_H
#define DATA_ROWS_H

#include "../llmc/base/error.h"           /* Error, xstrdup, xrealloc, xstrndup */
#include "../llmc/base/jsonl.h"           /* Jsonl, jsonl_error, jsonl_value_text, jsonl_type */
#include "../llmc/base/text.h"            /* TextBuffer, TokenList, text_clear, text_free, ... */
#include "../llmc/records/shard.h"        /* Record, step_label */
#include "../llmc/reward/verify.h"        /* VERIFY_UNREAD, rewards_check_answer, rewards_check_fields, ... */
#include "../llmc/reward/verify_answer.h" /* RewardInput */
#include "../llmc/text/chat.h"            /* CHAT_CONTINUED, CHAT_UNTRAINED, ChatMessage, ChatTemplate, ... */
#include "../llmc/text/tokenizer.h"       /* tokenizer_encode, TOKENIZER_CONTINUES, TOKENIZER_DOCUMENT, ... */
#include "row_fields.h"                   /* row_read, row_called, FIELD_MESSAGES, FIELD_PROMPT, ... */
#include "row_messages.h"                 /* RowMessages, row_messages_free, row_said_by_assistant, row_message, ... */
#include "super_ni.h"                     /* SuperNi */
#include "wordings.h"                     /* Wordings */

typedef enum { TRUNCATE_END, TRUNCATE_DROP, TRUNCATE_ERROR } RowTruncation;

/* Unusual properties of a row that its user should hear about. */
typedef enum {
    NOTE_TOO_LONG,
    NOTE_TRUNCATED,
    NOTE_NO_MASK,
    NOTE_SPECIAL_TEXT,
    NOTE_STOP_TEXT,
    NOTE_SPACE_BEFORE,
    NOTE_EQUAL,
    NOTE_NO_ANSWER,
    NOTE_NO_VERIFIER,
    NOTE_UNCHECKED,
    NOTE_SPLIT,
    NOTE_NO_TOOLS,
    NOTE_TEXT_ARGUMENTS,
    NOTE_THINK,
    NOTE_EMPTY,
    NOTE_COUNT
} RowNote;

typedef struct Rows {
    RowFields fields;
    const char *task_name;                                           /* for rows without a task, or NULL */
    const char *answer_after, *system, *prompt_end, *step_separator; /* NULL: none */
    int64_t max_tokens;                                              /* 0: no limit */
    RowTruncation truncation;
    RowKind kind;
    Tokenizer tokenizer;
    ChatTemplate chat;
    int32_t stop;
    const Wordings *wordings; /* or NULL */
    const SuperNi *super_ni;  /* or NULL */
    bool train_all;           /* kind chat: the mask is 1 on all tokens */
    const json_t *tools;      /* schemas, of rows that have no tools; NULL: none */
    bool texts;               /* the template was chosen for rows of texts, so that no row may have several messages */

    /* the current record; its buffers are reused */
    int32_t notes[NOTE_COUNT]; /* occurrences in the row */
    TokenList ids;
    uint8_t *mask;
    int32_t *length; /* of each completion of a preference */
    TextBuffer key;  /* hashed to choose the training or validation split */
    TextBuffer text_of_prompt, text_of_answer;
    char task[64], *others; /* others: the fields of a prompt record */
    Record record;
    bool more; /* row_make() has another record of the same row */
    int turn;  /* message from which it searches for the next turn */
} Rows;

/* Frees everything but the tokenizer and the template. */
static inline void rows_clear(Rows *r) {
    row_fields_clear(&r->fields);
    token_list_free(&r->ids);
    free(r->mask);
    free(r->length);
    free(r->others);
    text_free(&r->key);
    text_free(&r->text_of_prompt);
    text_free(&r->text_of_answer);
}

static inline void rows_free(Rows *r) {
    rows_clear(r);
    tokenizer_free(&r->tokenizer);
    chat_template_free(&r->chat);
}

/* ---- messages -------------------------------------------------------------------------------------------------- */

/* row_messages() of a field of the row. */
static inline bool row_field_messages(Rows *r, const Jsonl *j, json_t *row, json_t *value, RowFieldId field,
                                      const char *role, RowMessages *m, Error *e) {
    char name[128];
    bool thought = false;
    const int before = m->count;
    const bool ok =
        row_messages(&r->fields, &r->chat, j, value, row_called(&r->fields, row, field, name), role, m, &thought, e);
    if (thought) r->notes[NOTE_THINK]++;
    if (ok && r->texts && !json_is_string(value) && m->count - before > 1)
        return jsonl_error(j, name, e,
                           "is a conversation, but the first row has texts, for which the template 'plain' was chosen; "
                           "set --template or --model");
    return ok;
}

/* Whether the first of the messages is the system's. */
static inline bool row_has_system(json_t *messages) {
    const json_t *first = json_is_object(messages) ? messages : json_array_get(messages, 0);
    const char *name = json_string_value(row_role_of(first));
    return name && !strcmp(name, "system");
}

/* Appends the system message of the row, else that of --system, and the turns of the history. */
static inline bool row_before(Rows *r, const Jsonl *j, json_t *row, json_t *messages, RowMessages *m, Error *e) {
    char name[128];
    const char *text = r->system;
    if (!row_has_system(messages)) {
        json_t *system = row_read(&r->fields, row, FIELD_SYSTEM), *said = json_object_get(system, "content");
        if (json_is_object(system) && said) system = said;
        if (system) text = jsonl_value_text(j, system, row_called(&r->fields, row, FIELD_SYSTEM, name), e);
        if (system && !text) return false;
        if (text && *text) row_message(m, "system", xstrdup(text), NULL);
    }
    json_t *history = row_read(&r->fields, row, FIELD_HISTORY);
    return !history || row_history(j, history, row_called(&r->fields, row, FIELD_HISTORY, name), m, e);
}

/* Joins the text of an instruction with its input. */
static inline bool row_join_input(Rows *r, const Jsonl *j, json_t *row, RowMessages *m, Error *e) {
    char name[128];
    if (!r->fields.name[FIELD_INPUT] && strcmp(row_called(&r->fields, row, FIELD_PROMPT, name), "instruction"))
        return true;
    if (r->fields.pattern[FIELD_PROMPT]) return true;
    json_t *input = row_read(&r->fields, row, FIELD_INPUT);
    const char *more = input ? jsonl_value_text(j, input, row_called(&r->fields, row, FIELD_INPUT, name), e) : "";
    if (!more || !*more) return more != NULL;
    TextBuffer both = {0};
    ChatMessage *last = &m->items[m->count - 1];
    text_format(&both, "%s\n%s", last->content, more);
    free((char *)last->content);
    last->content = both.text;
    json_object_set_new(json_array_get(m->list, (size_t)m->count - 1), "content", json_string(both.text));
    return true;
}

/* Checks that the value of the field messages is a list. */
static inline bool row_check_list(Rows *r, const Jsonl *j, json_t *row, const json_t *messages, Error *e) {
    char name[128];
    return json_is_array(messages) || jsonl_error(j, row_called(&r->fields, row, FIELD_MESSAGES, name), e,
                                                  "is %s, expected a list of messages", jsonl_type(messages));
}

/* Reads what precedes the completion: the system message, the history, and the messages or the prompt. Its last message
 * is continued if it is the assistant's. *given: the value of the messages or the prompt. */
static inline bool row_prompt(Rows *r, const Jsonl *j, json_t *row, RowMessages *m, json_t **given, Error *e) {
    json_t *messages = row_read(&r->fields, row, FIELD_MESSAGES);
    const RowFieldId field = messages ? FIELD_MESSAGES : FIELD_PROMPT;
    *given = messages ? messages : row_read(&r->fields, row, FIELD_PROMPT);
    if (messages && !row_check_list(r, j, row, messages, e)) return false;
    if (!row_before(r, j, row, *given, m, e)) return false;
    const int first = m->count;
    if (!row_field_messages(r, j, row, *given, field, "user", m, e)) return false;
    if (json_is_string(*given)) return row_join_input(r, j, row, m, e);
    for (int i = first; i < m->count; i++)
        if (row_said_by_assistant(m, i)) m->flags[i] |= CHAT_UNTRAINED;
    if (row_said_by_assistant(m, m->count - 1)) m->flags[m->count - 1] |= CHAT_CONTINUED;
    return true;
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
static inline void row_check_messages(Rows *r, const RowMessages *m) {
    /* a template without text between prompt and completion; GPT-2's tokens include the space before a word */
    const bool model = r->chat.model != NULL;
    const bool adjoining = !model && r->tokenizer.merge_count && !chat_section(&r->chat, "assistant")->prefix.count;
    for (int i = 0; i < m->count; i++) {
        size_t at = 0;
        const char *content = m->items[i].content;
        const size_t n = strlen(content);
        const bool answer = row_said_by_assistant(m, i);
        if (row_text_arguments(m, i)) r->notes[NOTE_TEXT_ARGUMENTS]++;
        if (tokenizer_find_special(&r->tokenizer, content, n, &at) >= 0) r->notes[NOTE_SPECIAL_TEXT]++;
        if (adjoining && !answer && n && content[n - 1] == ' ' &&
            (i + 1 == m->count || row_said_by_assistant(m, i + 1)))
            r->notes[NOTE_SPACE_BEFORE]++;
        if (answer && !n && !json_object_get(json_array_get(m->list, (size_t)i), "tool_calls")) r->notes[NOTE_EMPTY]++;
        if (answer && !model && *r->chat.stop && !r->tokenizer.special[r->stop] && strstr(content, r->chat.stop))
            r->notes[NOTE_STOP_TEXT]++;
    }
}

/* Sets the split key of a conversation: all messages before the first completion. */
static inline void row_key(Rows *r, const RowMessages *m) {
    for (int i = 0; i < m->count && !row_said_by_assistant(m, i); i++) {
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
    r->notes[NOTE_TOO_LONG]++;
    return ROW_DROPPED;
}

/* Sets *tools to the tools of the row, a new reference, or to NULL if it has none. Notes tools that the template does not
 * write. */
static inline bool row_tools(Rows *r, const Jsonl *j, json_t *row, json_t **tools, Error *e) {
    json_t *value = row_read(&r->fields, row, FIELD_TOOLS);
    const char *text = json_string_value(value);
    char name[128];
    *tools = NULL;
    if (!value || (text && !json_string_length(value))) return true;
    *tools = text ? json_loads(text, 0, NULL) : json_incref(value);
    if (!json_is_array(*tools)) {
        json_decref(*tools);
        return jsonl_error(j, row_called(&r->fields, row, FIELD_TOOLS, name), e,
                           "is neither a list of tools nor a text with one");
    }
    if (json_array_size(*tools) && !row_template_has(&r->chat, "tools")) r->notes[NOTE_NO_TOOLS] = 1;
    return true;
}

/* Returns a conversation of the first `count` messages in JSON, with the tools of the row; NULL if these are
 * invalid. */
static inline json_t *row_conversation(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, int count,
                                       Error *e) {
    json_t *tools;
    if (!row_tools(r, j, row, &tools, e)) return NULL;
    json_t *some = json_array();
    for (int i = 0; i < count; i++) json_array_append(some, json_array_get(m->list, (size_t)i));
    if (!tools && r->tools) tools = json_incref((json_t *)r->tools);
    json_t *conversation = json_pack("{s:o,s:o}", "messages", some, "tools", tools ? tools : json_null());
    chat_conversation_flags(conversation, m->flags);
    return conversation;
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
        json_t *tools;
        if (!row_tools(r, j, row, &tools, e)) return false;
        json_decref(tools);
        RowTurns turns = row_turns(m, &r->chat, count);
        ok = chat_encode_flags(&r->chat, &r->tokenizer, turns.items, turns.flags, turns.count, prompt, ids, mask,
                               &inner);
        row_turns_free(&turns);
    }
    return ok || jsonl_error(j, NULL, e, "%s", inner.text);
}

/* ---- chats ----------------------------------------------------------------------------------------------------- */

/* Returns the next trained message of the assistant, from message i on, or m->count. */
static inline int row_next_turn(const RowMessages *m, int i) {
    while (i < m->count && (!row_said_by_assistant(m, i) || m->flags[i] & CHAT_UNTRAINED)) i++;
    return i;
}

/* Encodes a conversation, or the next turn of one whose turns need records of their own. */
static inline bool row_encode_chat(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, Error *e) {
    bool together = true;
    if (!r->more) {
        if (!row_encode(r, j, row, m, m->count, false, false, &r->ids, &r->mask, &together, e)) return false;
        if (together) return true;
        r->notes[NOTE_SPLIT]++;
        r->turn = 0;
    }
    const int turn = row_next_turn(m, r->turn);
    r->ids.count = 0;
    r->turn = turn + 1;
    r->more = row_next_turn(m, turn + 1) < m->count;
    return row_encode(r, j, row, m, turn + 1, false, true, &r->ids, &r->mask, NULL, e);
}

static inline RowResult row_chat(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, Error *e) {
    if (r->train_all && m->selected) {
        jsonl_error(j, NULL, e,
                    "a message has a flag that it is not trained on, but --no-assistant-only-loss trains on "
                    "all tokens");
        return ROW_BAD;
    }
    if (!row_encode_chat(r, j, row, m, e)) return ROW_BAD;
    if (r->train_all && r->ids.count) memset(r->mask, 1, (size_t)r->ids.count);
    row_key(r, m);
    row_check_messages(r, m);
    int32_t first = 0, count = r->ids.count;
    while (first < count && !r->mask[first]) first++;
    if (!count) {
        jsonl_error(j, NULL, e, "is an empty conversation");
        return ROW_BAD;
    }
    if (r->max_tokens && count > r->max_tokens) {
        if (r->truncation != TRUNCATE_END || first >= r->max_tokens)
            return row_too_long(r, j, count, "the conversation", e);
        r->notes[NOTE_TRUNCATED]++;
        count = (int32_t)r->max_tokens;
    }
    if (first == r->ids.count) r->notes[NOTE_NO_MASK]++;
    r->record = (Record){.tokens = r->ids.ids, .mask = r->mask, .count = count};
    return ROW_MADE;
}

static inline RowResult row_chat_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    RowMessages m = {0};
    json_t *given, *messages = row_peek(&r->fields, row, FIELD_MESSAGES),
                   *completion = row_peek(&r->fields, row, FIELD_COMPLETION);
    bool ok;
    if (messages && !completion) {
        row_read(&r->fields, row, FIELD_MESSAGES);
        ok = row_check_list(r, j, row, messages, e) && row_before(r, j, row, messages, &m, e) &&
             row_field_messages(r, j, row, messages, FIELD_MESSAGES, "user", &m, e);
    } else
        ok = row_prompt(r, j, row, &m, &given, e) &&
             row_field_messages(r, j, row, row_read(&r->fields, row, FIELD_COMPLETION), FIELD_COMPLETION, "assistant",
                                &m, e);
    const RowResult result = ok ? row_chat(r, j, row, &m, e) : ROW_BAD;
    row_messages_free(&m);
    return result;
}

/* Encodes the messages before the completion. */
static inline bool row_encode_prompt(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, Error *e) {
    char name[128];
    if (!row_encode(r, j, row, m, m->count, true, false, &r->ids, NULL, NULL, e)) return false;
    row_key(r, m);
    row_check_messages(r, m);
    return r->ids.count > 0 || jsonl_error(j, row_called(&r->fields, row, FIELD_PROMPT, name), e, "is empty");
}

/* ---- prompts --------------------------------------------------------------------------------------------------- */

/* Reads the reference answer; with --answer-after, only the part after its last occurrence. */
static inline bool row_answer(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    json_t *answer = row_read(&r->fields, row, FIELD_ANSWER);
    char name[128];
    text_clear(&r->text_of_answer);
    if (!answer) return true;
    row_called(&r->fields, row, FIELD_ANSWER, name);
    if (!row_scalar(j, answer, name, &r->text_of_answer, e)) return false;
    if (!r->answer_after) return true;
    const char *found = NULL, *text = r->text_of_answer.text;
    for (const char *s = text; (s = strstr(s, r->answer_after)); s += strlen(r->answer_after))
        found = s + strlen(r->answer_after);
    if (!found) return jsonl_error(j, name, e, "does not contain '%.60s'", r->answer_after);
    found += strspn(found, " \t\r\n");
    size_t n = strlen(found);
    while (n && strchr(" \t\r\n", found[n - 1])) n--;
    memmove(r->text_of_answer.text, found, n);
    r->text_of_answer.length = n;
    r->text_of_answer.text[n] = 0;
    return true;
}

/* Sets *task to the name of the row's verifier. */
static inline bool row_task(Rows *r, const Jsonl *j, json_t *row, const char **task, Error *e) {
    char name[128];
    *task = r->task_name ? r->task_name : "";
    if (row_task_of_source(&r->fields, row, r->task)) *task = r->task;
    row_called(&r->fields, row, FIELD_TASK, name);
    if (!r->fields.name[FIELD_TASK] && strcmp(name, "task")) return true;
    json_t *value = row_read(&r->fields, row, FIELD_TASK);
    if (value) *task = jsonl_value_text(j, value, name, e);
    return *task != NULL;
}

/* Appends the text of the prompt in the template. */
static inline bool row_render_prompt(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, Error *e) {
    if (!r->chat.model) {
        RowTurns turns = row_turns(m, &r->chat, m->count);
        const bool ok =
            chat_render(&r->chat, &r->tokenizer, turns.items, turns.flags, turns.count, true, &r->text_of_prompt, e);
        row_turns_free(&turns);
        return ok;
    }
    json_t *conversation = row_conversation(r, j, row, m, m->count, e);
    const bool ok = conversation && chat_render_conversation(&r->chat, conversation, true, &r->text_of_prompt, e);
    json_decref(conversation);
    return ok;
}

/* Removes the messages of a row whose prompt is another field: they would be read as its prompt once it is a row again. */
static inline void row_drop_messages(Rows *r, json_t *others) {
    for (const char *s = row_field[FIELD_MESSAGES].names; *s;) {
        const size_t n = strcspn(s, "|");
        char *name = xstrndup(s, n);
        if (json_object_get(others, name)) row_unread(&r->fields, "field '%.80s', which is not read", name);
        json_object_del(others, name);
        free(name);
        s += n + (s[n] == '|');
    }
}

/* Returns the fields of a prompt record as a JSON object, or "": those of the row that are not part of the record, and
 * the messages of a prompt that is not a single text. */
static inline const char *row_others(Rows *r, json_t *row, const RowMessages *m, bool text) {
    static const RowFieldId kept[] = {FIELD_PROMPT,  FIELD_INPUT,    FIELD_SYSTEM,
                                      FIELD_HISTORY, FIELD_MESSAGES, FIELD_ANSWER};
    json_t *others = json_copy(row), *value;
    const char *key;
    char name[128];
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (!r->fields.pattern[kept[i]] && row_name(&r->fields, row, kept[i], name, sizeof name) &&
            row_is_used(&r->fields, name))
            json_object_del(others, name);
    if (r->fields.name[FIELD_TASK] || json_object_get(row, "task"))
        json_object_del(others, r->fields.name[FIELD_TASK] ? r->fields.name[FIELD_TASK] : "task");
    json_object_foreach(row, key, value) {
        if (json_is_null(value)) json_object_del(others, key);
    }
    if (row_prompt_named(&r->fields)) row_drop_messages(r, others);
    if (!text || m->count > 1) {
        json_object_set(others, "messages", m->list);
        json_object_del(others, "prompt"); /* the text of the messages */
    }
    free(r->others);
    r->others = json_object_size(others) ? json_dumps(others, JSON_COMPACT | JSON_REAL_PRECISION(17)) : xstrdup("");
    json_decref(others);
    return r->others;
}

/* Sets what a prompt record has besides its tokens: r->text_of_prompt, r->text_of_answer, *task and *others, its other
 * fields as a JSON object. m, given: the messages of row_prompt() and the value that they were made of. */
static inline bool row_prompt_texts(Rows *r, const Jsonl *j, json_t *row, const RowMessages *m, const json_t *given,
                                    const char **task, const char **others, Error *e) {
    const bool text = json_is_string(given);
    text_clear(&r->text_of_prompt);
    if (!row_answer(r, j, row, e) || !row_task(r, j, row, task, e)) return false;
    if (text) text_string(&r->text_of_prompt, m->items[m->count - 1].content);
    else if (!row_render_prompt(r, j, row, m, e)) return false;
    *others = row_others(r, row, m, text);
    return true;
}

static inline RowResult row_prompt_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    RowMessages m = {0};
    json_t *given;
    const char *task = "", *others = "";
    const bool ok = row_prompt(r, j, row, &m, &given, e) && row_encode_prompt(r, j, row, &m, e) &&
                    row_prompt_texts(r, j, row, &m, given, &task, &others, e);
    row_messages_free(&m);
    if (!ok) return ROW_BAD;
    if (r->max_tokens && r->ids.count > r->max_tokens) return row_too_long(r, j, r->ids.count, "the prompt", e);
    const RewardInput input = {.task = task, .answer = r->text_of_answer.text, .fields = others};
    const char *field;
    Error why;
    if (!rewards_check_fields(&input, &field, &why)) {
        jsonl_error(j, field, e, "%s", why.text);
        return ROW_BAD;
    }
    if (!r->text_of_answer.length && !*task) r->notes[NOTE_NO_ANSWER]++;
    else if (verify_kind(task) < 0) r->notes[NOTE_NO_VERIFIER]++;
    else if (!rewards_check_answer(&input, NULL)) r->notes[NOTE_UNCHECKED]++;
    const char *unread[VERIFY_UNREAD];
    const int unread_count = rewards_unread_fields(&input, unread);
    for (int i = 0; i < unread_count; i++)
        row_unread(&r->fields, "records with a field '%s' that the check of their task does not read", unread[i]);
    r->record = (Record){.tokens = r->ids.ids,
                         .count = r->ids.count,
                         .prompt = r->ids.count,
                         .text = r->text_of_prompt.text,
                         .task = task,
                         .answer = r->text_of_answer.text,
                         .fields = others};
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

/* A row with two or more completions. */
typedef struct RowPreference {
    RowMessages prompt, *answer; /* answer: (count) from the best to the worst */
    RowMessages gold;            /* the gold answer, or no message */
    int32_t count;
    double margin;
} RowPreference;

static inline void row_preference_free(RowPreference *x) {
    row_messages_free(&x->prompt);
    row_messages_free(&x->gold);
    for (int32_t k = 0; k < x->count; k++) row_messages_free(&x->answer[k]);
    free(x->answer);
}

/* Whether a completion is a whole conversation: a list that does not begin with the assistant's message. */
static inline bool row_whole(const json_t *completion) {
    const char *name = json_string_value(row_role_of(json_array_get(completion, 0)));
    return name && !row_is_assistant(name);
}

/* The number of messages with which two lists begin alike. */
static inline size_t row_common_messages(const json_t *a, const json_t *b) {
    size_t n = 0;
    while (n < json_array_size(a) && n < json_array_size(b) && json_equal(json_array_get(a, n), json_array_get(b, n)))
        n++;
    return n;
}

/* Reads message n and those after it as a completion. */
static inline bool row_rest(Rows *r, const Jsonl *j, json_t *row, const json_t *list, size_t n, RowFieldId field,
                            RowMessages *answer, Error *e) {
    json_t *rest = json_array();
    for (size_t k = n; k < json_array_size(list); k++) json_array_append(rest, json_array_get(list, k));
    const bool ok = row_field_messages(r, j, row, rest, field, "assistant", answer, e);
    json_decref(rest);
    return ok;
}

/* Reads the lists chosen and rejected of a row whose prompt is their common beginning. */
static inline bool row_implicit_lists(Rows *r, const Jsonl *j, json_t *row, json_t *chosen, json_t *rejected,
                                      RowMessages *prompt, RowMessages answer[2], Error *e) {
    char name[128], other[128];
    json_t *both = json_array(), *list[2] = {chosen, rejected};
    const size_t n = row_common_messages(chosen, rejected);
    for (size_t k = 0; k < n; k++) json_array_append(both, json_array_get(chosen, k));
    bool ok = n > 0 || jsonl_error(j, row_called(&r->fields, row, FIELD_CHOSEN, name), e,
                                   "and '%s' begin with different messages, and there is no prompt",
                                   row_called(&r->fields, row, FIELD_REJECTED, other));
    ok = ok && row_before(r, j, row, both, prompt, e) &&
         row_field_messages(r, j, row, both, FIELD_CHOSEN, "user", prompt, e);
    if (ok && row_said_by_assistant(prompt, prompt->count - 1)) prompt->flags[prompt->count - 1] |= CHAT_CONTINUED;
    for (int i = 0; ok && i < 2; i++)
        ok = row_rest(r, j, row, list[i], n, i ? FIELD_REJECTED : FIELD_CHOSEN, &answer[i], e);
    json_decref(both);
    return ok;
}

/* Splits chosen and rejected of a row without a prompt into the messages of the prompt and of the completions. */
static inline bool row_implicit(Rows *r, const Jsonl *j, json_t *row, json_t *chosen, json_t *rejected,
                                RowMessages *prompt, RowMessages answer[2], Error *e) {
    char name[128], other[128], names[240];
    if (json_is_array(chosen) && json_is_array(rejected))
        return row_implicit_lists(r, j, row, chosen, rejected, prompt, answer, e);
    row_called(&r->fields, row, FIELD_CHOSEN, name);
    row_called(&r->fields, row, FIELD_REJECTED, other);
    const char *a = jsonl_value_text(j, chosen, name, e), *b = a ? jsonl_value_text(j, rejected, other, e) : NULL;
    if (!a || !b) return false;
    row_list(row, names, sizeof names);
    const size_t n = row_common_prefix(a, b, r->prompt_end ? r->prompt_end : "\n\nAssistant:");
    if (!n)
        return jsonl_error(j, name, e,
                           "and '%s' have no common beginning that could be the prompt; of the fields %s, name the "
                           "prompt with --prompt-field",
                           other, names);
    if (!row_before(r, j, row, NULL, prompt, e)) return false;
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
    if (ok) token_list_extend(&r->ids, ids.ids + before, end - before);
    row_messages_free(&all);
    token_list_free(&ids);
    free(mask);
    return ok;
}

/* Reads the gold answer. chosen, rejected: if the prompt is their common beginning, in which case the gold answer must begin
 * with it, too; else NULL. */
static inline bool row_gold(Rows *r, const Jsonl *j, json_t *row, const json_t *chosen, const json_t *rejected,
                            RowPreference *x, Error *e) {
    char name[128];
    json_t *gold = row_read(&r->fields, row, FIELD_REFERENCE);
    const size_t n = row_common_messages(chosen, rejected);
    row_called(&r->fields, row, FIELD_REFERENCE, name);
    if (!gold) return true;
    if (!chosen || (json_is_array(chosen) && !row_whole(gold))) {
        if (row_whole(gold)) return jsonl_error(j, name, e, "does not begin with the assistant's message");
        return row_field_messages(r, j, row, gold, FIELD_REFERENCE, "assistant", &x->gold, e);
    }
    if (json_is_array(chosen)) {
        if (row_common_messages(chosen, gold) < n)
            return jsonl_error(j, name, e, "does not begin with the messages with which the completions begin");
        return row_rest(r, j, row, gold, n, FIELD_REFERENCE, &x->gold, e);
    }
    const char *text = jsonl_value_text(j, gold, name, e), *prompt = x->prompt.items[x->prompt.count - 1].content;
    if (!text) return false;
    if (strncmp(text, prompt, strlen(prompt)))
        return jsonl_error(j, name, e,
                           "does not begin with the text with which the completions begin; name the prompt with "
                           "--prompt-field");
    row_message(&x->gold, "assistant", xstrdup(text + strlen(prompt)), NULL);
    return true;
}

/* Truncates all completions to the room that the limit leaves after the prompt. */
static inline RowResult row_cut_answers(Rows *r, const Jsonl *j, Record *p, Error *e) {
    int64_t longest = p->gold;
    for (int32_t k = 0; k < p->completions; k++) longest = p->length[k] > longest ? p->length[k] : longest;
    longest += p->prompt;
    if (!r->max_tokens || longest <= r->max_tokens) return ROW_MADE;
    if (r->truncation != TRUNCATE_END || p->prompt >= r->max_tokens)
        return row_too_long(r, j, longest, "the prompt with a completion", e);
    r->notes[NOTE_TRUNCATED]++;
    const int32_t room = (int32_t)r->max_tokens - p->prompt;
    const int32_t *from = r->ids.ids + p->prompt;
    r->ids.count = p->prompt;
    for (int32_t k = 0; k <= p->completions; k++) {
        int32_t *length = k < p->completions ? &p->length[k] : &p->gold;
        const int32_t was = *length, kept = was < room ? was : room;
        memmove(r->ids.ids + r->ids.count, from, (size_t)kept * sizeof *from);
        from += was;
        *length = kept;
        r->ids.count += kept;
    }
    return ROW_MADE;
}

/* Whether two completions of a preference have the same tokens. */
static inline bool row_answers_repeat(const Record *p) {
    const int32_t *a = p->tokens + p->prompt;
    for (int32_t i = 0; i < p->completions; a += p->length[i], i++) {
        const int32_t *b = a + p->length[i];
        for (int32_t k = i + 1; k < p->completions; b += p->length[k], k++)
            if (p->length[i] == p->length[k] && !memcmp(a, b, (size_t)p->length[i] * sizeof *a)) return true;
    }
    return false;
}

/* Makes the record of a row with two or more completions. */
static inline RowResult row_preference(Rows *r, const Jsonl *j, json_t *row, const RowPreference *x, Error *e) {
    if (!row_encode_prompt(r, j, row, &x->prompt, e)) return ROW_BAD;
    r->length = (int32_t *)xrealloc(r->length, (size_t)x->count, sizeof *r->length);
    Record p = {.prompt = r->ids.count, .completions = x->count, .length = r->length, .margin = (float)x->margin};
    for (int32_t k = 0; k < x->count; k++) row_check_messages(r, &x->answer[k]);
    for (int32_t k = 0; k < x->count; k++)
        if (!row_append_answer(r, j, row, &x->prompt, &x->answer[k], p.prompt, &p.length[k], e)) return ROW_BAD;
    row_check_messages(r, &x->gold);
    if (x->gold.count && !row_append_answer(r, j, row, &x->prompt, &x->gold, p.prompt, &p.gold, e)) return ROW_BAD;
    const RowResult result = row_cut_answers(r, j, &p, e);
    if (result != ROW_MADE) return result;
    p.tokens = r->ids.ids;
    p.count = r->ids.count;
    if (row_answers_repeat(&p)) {
        r->notes[NOTE_EQUAL]++;
        return ROW_DROPPED;
    }
    r->record = p;
    return ROW_MADE;
}

/* Reads the list of completions of a ranking. */
static inline bool row_ranked(Rows *r, const Jsonl *j, json_t *row, json_t *list, RowPreference *x, Error *e) {
    char name[128];
    const size_t count = json_array_size(list);
    row_called(&r->fields, row, FIELD_COMPLETIONS, name);
    if (count < 2)
        return jsonl_error(j, name, e, "is %s, expected a list of two or more completions, from the best to the worst",
                           count                 ? "a list of one"
                           : json_is_array(list) ? "an empty list"
                                                 : jsonl_type(list));
    if (count > INT32_MAX) return jsonl_error(j, name, e, "has %zu completions, expected at most %d", count, INT32_MAX);
    if (count > 2 && row_read(&r->fields, row, FIELD_MARGIN))
        return jsonl_error(j, row_called(&r->fields, row, FIELD_MARGIN, name), e,
                           "is that of a pair, but the row has %zu completions", count);
    x->answer = (RowMessages *)xcalloc(count, sizeof *x->answer);
    x->count = (int32_t)count;
    for (size_t k = 0; k < count; k++) {
        json_t *one = json_array_get(list, k);
        if (row_whole(one))
            return jsonl_error(j, name, e, "completion %zu does not begin with the assistant's message", k + 1);
        if (!row_field_messages(r, j, row, one, FIELD_COMPLETIONS, "assistant", &x->answer[k], e)) return false;
    }
    return true;
}

/* Reads a row with a list of completions, from the best to the worst. */
static inline bool row_ranking(Rows *r, const Jsonl *j, json_t *row, RowPreference *x, Error *e) {
    json_t *list = row_read(&r->fields, row, FIELD_COMPLETIONS), *given;
    return row_prompt(r, j, row, &x->prompt, &given, e) && row_ranked(r, j, row, list, x, e) &&
           row_gold(r, j, row, NULL, NULL, x, e);
}

/* Reads a row with a chosen and a rejected completion. */
static inline bool row_pair(Rows *r, const Jsonl *j, json_t *row, RowPreference *x, Error *e) {
    json_t *chosen = row_read(&r->fields, row, FIELD_CHOSEN), *rejected = row_read(&r->fields, row, FIELD_REJECTED),
           *given;
    x->answer = (RowMessages *)xcalloc(2, sizeof *x->answer);
    x->count = 2;
    if ((row_whole(chosen) && row_whole(rejected)) ||
        !(row_has(&r->fields, row, FIELD_PROMPT) || row_has(&r->fields, row, FIELD_MESSAGES))) {
        const bool ok = row_implicit(r, j, row, chosen, rejected, &x->prompt, x->answer, e) &&
                        row_gold(r, j, row, chosen, rejected, x, e);
        /* a prompt or messages next to whole conversations repeat their beginning or one of them */
        row_read(&r->fields, row, FIELD_PROMPT);
        row_read(&r->fields, row, FIELD_MESSAGES);
        return ok;
    }
    return row_prompt(r, j, row, &x->prompt, &given, e) &&
           row_field_messages(r, j, row, chosen, FIELD_CHOSEN, "assistant", &x->answer[0], e) &&
           row_field_messages(r, j, row, rejected, FIELD_REJECTED, "assistant", &x->answer[1], e) &&
           row_gold(r, j, row, NULL, NULL, x, e);
}

static inline RowResult row_preference_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    const json_t *margin = row_read(&r->fields, row, FIELD_MARGIN);
    char name[128];
    if (margin && !json_is_number(margin)) {
        jsonl_error(j, row_called(&r->fields, row, FIELD_MARGIN, name), e, "is %s, expected a number",
                    jsonl_type(margin));
        return ROW_BAD;
    }
    if (margin && !isfinite((float)json_number_value(margin))) {
        jsonl_error(j, row_called(&r->fields, row, FIELD_MARGIN, name), e, "is %g, expected at most 3.4e38 in size",
                    json_number_value(margin));
        return ROW_BAD;
    }
    RowPreference x = {.margin = json_number_value(margin)};
    const bool ok = row_is_ranking(&r->fields, row) ? row_ranking(r, j, row, &x, e) : row_pair(r, j, row, &x, e);
    const RowResult result = ok ? row_preference(r, j, row, &x, e) : ROW_BAD;
    row_preference_free(&x);
    return result;
}

/* ---- steps ----------------------------------------------------------------------------------------------------- */

/* Encodes the steps after the prompt, up to the first step that exceeds the limit. */
static inline RowResult row_steps(Rows *r, const Jsonl *j, const json_t *steps, const json_t *labels, const char *name,
                                  const char *labelled, Error *e) {
    const int32_t prompt = r->ids.count;
    Error inner;
    r->mask = (uint8_t *)xrealloc(r->mask, (size_t)prompt, 1);
    memset(r->mask, 0, (size_t)prompt);
    for (size_t i = 0; i < json_array_size(steps); i++) {
        const int32_t before = r->ids.count;
        const json_t *given = json_array_get(labels, i);
        const double share = json_is_real(given) ? json_real_value(given) : -1;
        const int label = share >= 0 && share <= 1 ? step_label(share) : row_label(given, 1);
        const char *step = jsonl_value_text(j, json_array_get(steps, i), name, e);
        if (!step) return ROW_BAD;
        if (label < 0) {
            jsonl_error(j, labelled, e, "label %zu is neither true, false nor a number from 0 to 1", i);
            return ROW_BAD;
        }
        if (!tokenizer_encode(&r->tokenizer, step, strlen(step), TOKENIZER_CONTINUES, &r->ids, &inner) ||
            !tokenizer_encode(&r->tokenizer, r->step_separator, strlen(r->step_separator), TOKENIZER_CONTINUES, &r->ids,
                              &inner)) {
            jsonl_error(j, name, e, "%s", inner.text);
            return ROW_BAD;
        }
        if (r->ids.count == before) {
            jsonl_error(j, name, e, "step %zu is empty", i);
            return ROW_BAD;
        }
        if (r->max_tokens && r->ids.count > r->max_tokens) {
            if (r->truncation != TRUNCATE_END || !i) return row_too_long(r, j, r->ids.count, "the solution", e);
            r->notes[NOTE_TRUNCATED]++;
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
    json_t *given;
    const json_t *steps = row_read(&r->fields, row, FIELD_COMPLETIONS),
                 *labels = row_read(&r->fields, row, FIELD_LABELS);
    char name[128], labelled[128];
    row_called(&r->fields, row, FIELD_COMPLETIONS, name);
    row_called(&r->fields, row, FIELD_LABELS, labelled);
    bool ok = row_prompt(r, j, row, &m, &given, e) && row_encode_prompt(r, j, row, &m, e);
    if (ok && (!json_is_array(steps) || !json_array_size(steps)))
        ok = jsonl_error(j, name, e, "is %s, expected a list of steps",
                         json_is_array(steps) ? "an empty list" : jsonl_type(steps));
    if (ok && (!json_is_array(labels) || json_array_size(labels) != json_array_size(steps)))
        ok = jsonl_error(j, labelled, e, "is not a list of %zu labels, one for each step", json_array_size(steps));
    row_messages_free(&m);
    return ok ? row_steps(r, j, steps, labels, name, labelled, e) : ROW_BAD;
}

/* ---- unpaired -------------------------------------------------------------------------------------------------- */

static inline RowResult row_unpaired(Rows *r, const Jsonl *j, json_t *row, const RowMessages *prompt,
                                     const RowMessages *answer, int label, Error *e) {
    int32_t length;
    if (!row_encode_prompt(r, j, row, prompt, e)) return ROW_BAD;
    Record p = {.prompt = r->ids.count, .label = label};
    row_check_messages(r, answer);
    if (!row_append_answer(r, j, row, prompt, answer, p.prompt, &length, e)) return ROW_BAD;
    p.tokens = r->ids.ids;
    p.count = r->ids.count;
    if (r->max_tokens && p.count > r->max_tokens) {
        if (r->truncation != TRUNCATE_END || p.prompt >= r->max_tokens)
            return row_too_long(r, j, p.count, "the prompt with its completion", e);
        r->notes[NOTE_TRUNCATED]++;
        p.count = (int32_t)r->max_tokens;
    }
    r->record = p;
    return ROW_MADE;
}

/* Moves the last message of a conversation to `answer`. */
static inline bool row_last_message(const Jsonl *j, RowMessages *m, RowMessages *answer, Error *e) {
    const int last = m->count - 1;
    if (!row_said_by_assistant(m, last) || !last)
        return jsonl_error(j, NULL, e, "the last message, which the label is for, is not an answer of the assistant");
    row_message(answer, "assistant", (char *)m->items[last].content, json_array_get(m->list, (size_t)last));
    json_array_remove(m->list, (size_t)last);
    m->count--;
    if (row_said_by_assistant(m, last - 1)) m->flags[last - 1] |= CHAT_CONTINUED;
    return true;
}

static inline RowResult row_unpaired_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    RowMessages prompt = {0}, answer = {0};
    json_t *completion = row_read(&r->fields, row, FIELD_COMPLETION), *given;
    const json_t *label = row_read(&r->fields, row, FIELD_LABEL);
    const int good = row_label(label, 1);
    char name[128], text[80];
    bool ok = good >= 0;
    row_describe(label, text, sizeof text);
    if (!ok) {
        if (!label && row_has(&r->fields, row, FIELD_LABEL)) snprintf(text, sizeof text, "null");
        jsonl_error(j, row_called(&r->fields, row, FIELD_LABEL, name), e,
                    "is %s, expected true or false (or 1, 0, good, bad); --kind chat does not read it", text);
    }
    ok = ok && row_prompt(r, j, row, &prompt, &given, e);
    if (ok && !completion && row_peek(&r->fields, row, FIELD_MESSAGES)) ok = row_last_message(j, &prompt, &answer, e);
    else ok = ok && row_field_messages(r, j, row, completion, FIELD_COMPLETION, "assistant", &answer, e);
    const RowResult result = ok ? row_unpaired(r, j, row, &prompt, &answer, good, e) : ROW_BAD;
    row_messages_free(&prompt);
    row_messages_free(&answer);
    return result;
}

/* ---- any row -------------------------------------------------------------------------------------------------- */

/* Sets r->ids to a document: its text after bos, if the tokenizer adds that, or after the end-of-text token, which
 * separates documents of GPT-2. */
static inline bool row_document(Rows *r, const char *text, size_t n, Error *e) {
    r->ids.count = 0;
    if (!r->tokenizer.add_bos) token_list_append(&r->ids, r->tokenizer.eos);
    return tokenizer_encode(&r->tokenizer, text, n, r->tokenizer.add_bos ? TOKENIZER_DOCUMENT : 0, &r->ids, e);
}

static inline RowResult row_text_line(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    char name[128];
    json_t *value = row_read(&r->fields, row, FIELD_TEXT);
    const char *text = jsonl_value_text(j, value, row_called(&r->fields, row, FIELD_TEXT, name), e);
    if (!text) return ROW_BAD;
    text_string(&r->key, text);
    return row_document(r, text, strlen(text), e) ? ROW_MADE : ROW_BAD;
}

/* Notes the fields of the row that nothing has read; a prompt record keeps them. */
static inline void row_note_unread(Rows *r, json_t *row) {
    const char *key;
    json_t *value;
    if (r->kind == ROW_PROMPT) return;
    json_object_foreach(row, key, value) {
        if (!json_is_null(value) && !row_is_used(&r->fields, key))
            row_unread(&r->fields, "field '%.80s', which is not read", key);
    }
}

/* Converts a row to r->record and r->key; a row of kind text to r->ids, after the end-of-text token. Sets *e on
 * ROW_BAD. If r->more is true afterwards, the next call with the same row makes its next record. r->notes and
 * r->fields.unread are what the user should hear about the row. */
static inline RowResult row_make(Rows *r, const Jsonl *j, json_t *row, Error *e) {
    static RowResult (*const make[ROW_KINDS])(Rows *, const Jsonl *, json_t *, Error *) = {
        [ROW_AUTO] = row_text_line,     [ROW_CHAT] = row_chat_line,
        [ROW_PROMPT] = row_prompt_line, [ROW_PREFERENCE] = row_preference_line,
        [ROW_STEP] = row_step_line,     [ROW_UNPAIRED] = row_unpaired_line,
        [ROW_TEXT] = row_text_line};
    const bool again = r->more;
    r->ids.count = 0;
    text_clear(&r->key);
    row_fields_clear(&r->fields);
    memset(r->notes, 0, sizeof r->notes);
    if (r->wordings) row_read(&r->fields, row, FIELD_TASK);
    row_read(&r->fields, row, FIELD_CLUSTER);
    RowResult result = row_patterns(&r->fields, j, row, e) ? make[r->kind](r, j, row, e) : ROW_BAD;
    if (result == ROW_BAD) r->more = false;
    if (!again && result != ROW_BAD) row_note_unread(r, row);
    return result;
}

#endif
