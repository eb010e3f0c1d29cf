/* conversation.h - the messages of a chat, and the tokens that the model reads of them.
 *
 * Without tools all messages are encoded by the chat template before each answer. With tools an answer is the tokens that
 * the model drew and observed, and these are never encoded again: only the first message (with the system's message and
 * the tools before it) and what the template writes between an answer and the next one are. If the oldest turns are
 * removed, the oldest message that is left is encoded as the first one.
 *
 *     Conversation c = {.text = &model_text};
 *     TokenList ids = {0};
 *     conversation_add(&c, "user", "Hello");
 *     if (!conversation_encode(&c, &ids, &e)) die("%s", e.text);
 *     conversation_add(&c, "assistant", "Hello!");
 *     size_t messages;
 *     if (!conversation_save(&c, "chat.jsonl", &messages, &e)) die("%s", e.text);
 *     conversation_free(&c);
 */
#ifndef LLMC_TERMINAL_CONVERSATION_H
#define LLMC_TERMINAL_CONVERSATION_H

#include "../base/error.h"        /* Error, xrealloc, xstrdup */
#include "../base/io.h"           /* Writer, writer_abort, writer_commit, writer_open */
#include "../base/json_text.h"    /* json_utf8 */
#include "../base/text.h"         /* TokenList, token_list_append, token_list_extend, token_list_free */
#include "../model/model_text.h"  /* ModelText */
#include "../rollout/inference.h" /* json_line */
#include "../text/chat.h"         /* ChatMessage, chat_conversation, chat_encode, chat_encode_answer, ... */
#include <jansson.h>

/* What the model drew and observed for an answer, in a chat with tools. */
typedef struct ConversationAnswer {
    TokenList ids;    /* without the token that ended it */
    json_t *messages; /* its turns and the results of their calls, in OpenAI's form */
} ConversationAnswer;

typedef struct Conversation {
    const ModelText *text;
    bool tools;                  /* answers may have several turns: their tokens are kept */
    const json_t *schemas;       /* of the tools, for a model's own template; NULL: none are shown */
    ChatMessage *messages;       /* (count); owns the contents */
    ConversationAnswer *answers; /* (count) of the assistant's messages */
    int count, capacity;
    int kept; /* 1 if there is a system message, which is never removed */
} Conversation;

static inline void conversation_add(Conversation *c, const char *role, const char *content) {
    if (c->count == c->capacity) {
        c->capacity = 2 * c->capacity + 8;
        c->messages = (ChatMessage *)xrealloc(c->messages, (size_t)c->capacity, sizeof *c->messages);
        c->answers = (ConversationAnswer *)xrealloc(c->answers, (size_t)c->capacity, sizeof *c->answers);
    }
    c->answers[c->count] = (ConversationAnswer){0};
    c->messages[c->count++] = (ChatMessage){role, xstrdup(content)};
}

/* Removes n messages, starting at `first`. */
static inline void conversation_remove(Conversation *c, int first, int n) {
    const size_t rest = (size_t)(c->count - first - n);
    for (int i = first; i < first + n; i++) {
        free((char *)c->messages[i].content);
        token_list_free(&c->answers[i].ids);
        json_decref(c->answers[i].messages);
    }
    memmove(c->messages + first, c->messages + first + n, rest * sizeof *c->messages);
    memmove(c->answers + first, c->answers + first + n, rest * sizeof *c->answers);
    c->count -= n;
}

static inline void conversation_free(Conversation *c) {
    conversation_remove(c, 0, c->count);
    free(c->messages), free(c->answers);
    *c = (Conversation){0};
}

/* Sets the system message; an empty one removes it. */
static inline void conversation_system(Conversation *c, const char *text) {
    if (c->kept) conversation_remove(c, 0, 1);
    c->kept = *text != 0;
    if (!*text) return;
    conversation_add(c, "system", text);
    const ChatMessage added = c->messages[c->count - 1];
    memmove(c->messages + 1, c->messages, (size_t)(c->count - 1) * sizeof *c->messages);
    memmove(c->answers + 1, c->answers, (size_t)(c->count - 1) * sizeof *c->answers);
    c->messages[0] = added;
    c->answers[0] = (ConversationAnswer){0};
}

/* Appends the tokens of messages as a prompt. schemas: of the tools that a model's own template shows; or NULL. */
static inline bool conversation_prompt(const ModelText *t, const ChatMessage *messages, int count,
                                       const json_t *schemas, TokenList *ids, Error *e) {
    bool ok;
    if (schemas && t->chat.model) {
        json_t *whole = chat_conversation(messages, NULL, count, e);
        if (!whole) return false;
        json_object_set(whole, "tools", (json_t *)schemas);
        ok = chat_encode_conversation(&t->chat, &t->tokenizer, whole, true, false, ids, NULL, NULL, e);
        json_decref(whole);
    } else ok = chat_encode(&t->chat, &t->tokenizer, messages, count, true, ids, NULL, e);
    if (ok && !ids->count) token_list_append(ids, t->tokenizer.eos);
    return ok;
}

/* Appends the tokens that follow an answer, up to the next one: the token that ends it, the message of the user, the
 * opening of the next answer. */
static inline bool conversation_next(const ModelText *t, const char *content, TokenList *ids, Error *e) {
    const int32_t stop = chat_stop_token(&t->chat, &t->tokenizer);
    json_t *asked = json_pack("[{s:s,s:s}]", "role", "user", "content", content);
    if (stop >= 0) token_list_append(ids, stop);
    const bool ok = chat_encode_answer(&t->chat, &t->tokenizer, asked, ids, e);
    json_decref(asked);
    return ok;
}

/* Sets *ids to the tokens of the conversation, whose last message is the user's. */
static inline bool conversation_encode(const Conversation *c, TokenList *ids, Error *e) {
    const int first = c->tools && c->count > c->kept ? c->kept + 1 : c->count;
    ids->count = 0;
    bool ok = conversation_prompt(c->text, c->messages, first, c->schemas, ids, e);
    for (int i = first; ok && i < c->count; i++) {
        const TokenList *answer = &c->answers[i].ids;
        token_list_extend(ids, answer->ids, answer->count);
        if (strcmp(c->messages[i].role, "assistant")) ok = conversation_next(c->text, c->messages[i].content, ids, e);
    }
    return ok;
}

/* Writes the conversation as a line of JSON. *written: the number of its messages. */
static inline bool conversation_save(const Conversation *c, const char *path, size_t *written, Error *e) {
    Writer w;
    json_t *messages = json_array();
    for (int i = 0; i < c->count; i++) {
        const ChatMessage *m = &c->messages[i];
        if (c->answers[i].messages) json_array_extend(messages, c->answers[i].messages);
        else
            json_array_append_new(messages, json_pack("{s:s,s:o}", "role", m->role, "content",
                                                      json_utf8(m->content, strlen(m->content))));
    }
    json_t *row = json_pack("{s:o}", "messages", messages);
    *written = json_array_size(messages);
    if (c->schemas) json_object_set(row, "tools", (json_t *)c->schemas);
    bool ok = writer_open(&w, path, e);
    if (ok) {
        ok = json_line(&w, row, e) && writer_commit(&w, e);
        writer_abort(&w);
    }
    json_decref(row);
    return ok;
}

#endif
