/* chat.h - chat templates: encoding of conversations, and the mask of the assistant's trained tokens.
 *
 * A template is a model's own in Jinja (a text with {{, {% or {# that does not begin with a section's tag, see
 * jinja_chat.h), or "chatml", "llama", "nanochat", "plain" (or ""), or a custom text that consists of sections. A section
 * begins with a tag for the role of its messages and gives the text before and after a message's {content}:
 *
 *   {begin}TEXT                     once, before the first message
 *   {user}PREFIX{content}SUFFIX     for messages of role user; likewise {system}, {assistant} or any other role
 *   {any}PREFIX{content}SUFFIX      for roles without their own section
 *   {system}PREFIX{content}SUFFIX{next}   such a message is joined with the user's message that follows: the three texts
 *                                   are put before its content
 *   {python}PREFIX{content}SUFFIX   for calls within an assistant's content; {python_output} for their results
 *
 * In these texts, {role} is the role's name, {eos} is the tokenizer's end-of-text token, \n and \t are newline and tab,
 * and a backslash makes the next character literal: \{ \< \\. A word in angle brackets, such as <|im_end|> or </s>, is
 * one special token, which the tokenizer must have; chat_add_specials() adds missing ones. The built-in templates:
 *
 *   chatml   {any}<|im_start|>{role}\n{content}<|im_end|>\n
 *   llama    {begin}<|begin_of_text|>{any}<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>
 *   nanochat {begin}<|bos|>{system}{content}\n\n{next}{user}<|user_start|>{content}<|user_end|>
 *            {assistant}<|assistant_start|>{content}<|assistant_end|>{python}<|python_start|>{content}<|python_end|>
 *            {python_output}<|output_start|>{content}<|output_end|>
 *            (one line; karpathy/nanochat, render_conversation() of nanochat/tokenizer.py)
 *   plain    {any}{content}{assistant}{content}{eos}
 *
 * A template without special tokens:  {user}Question: {content}\n{assistant}Answer:{content}\n
 *
 * The assistant's turn ends with the first special token of its suffix. If the suffix has no special token, the turn
 * ends with the whole suffix, which must then be one token of the tokenizer. An assistant section without a suffix is
 * rejected, because the model would never learn to stop.
 *
 * With sections, contents are used unchanged, including leading and trailing spaces. Template texts and contents are
 * encoded separately, so the tokens of a prompt do not depend on the completion. Special tokens are recognised only in
 * the template, so a user cannot type <|im_end|>. The mask is 1 on the content of every assistant message, on the token
 * that ends it and on {python} within it, with its prefix and suffix; it is 0 elsewhere, also on {python_output}.
 *
 *     ChatTemplate c;
 *     TokenList ids = {0};
 *     uint8_t *mask = NULL;
 *     if (!chat_template_parse(&c, "chatml", e) || !chat_add_specials(&c, &tokenizer, e)) return false;
 *     const ChatMessage m[] = {{"user", "2+3="}, {"assistant", "5"}};
 *     if (!chat_encode(&c, &tokenizer, m, 2, false, &ids, &mask, e)) return false;        // for training
 *     if (!chat_encode(&c, &tokenizer, m, 1, true, &ids, NULL, e)) return false;          // a prompt
 *     chat_template_free(&c);
 */
#ifndef LLMC_TEXT_CHAT_H
#define LLMC_TEXT_CHAT_H

#include "../base/error.h" /* Error, error_set, xstrdup, xrealloc, ... */
#include "../base/text.h"  /* TokenList, TextBuffer, text_string, text_free, ... */
#include "jinja.h"         /* jinja_text_free */
#include "jinja_chat.h"    /* JinjaChat, jinja_chat_stop, JinjaTurns, jinja_chat_encode, ... */
#include "jinja_value.h"   /* JinjaText */
#include "tokenizer.h"     /* Tokenizer, tokenizer_encode, TOKENIZER_CONTINUES, tokenizer_special, ... */
#include <ctype.h>

#define CHAT_CHATML "{any}<|im_start|>{role}\\n{content}<|im_end|>\\n"
#define CHAT_LLAMA  "{begin}<|begin_of_text|>{any}<|start_header_id|>{role}<|end_header_id|>\\n\\n{content}<|eot_id|>"
#define CHAT_PLAIN  "{any}{content}{assistant}{content}{eos}"
#define CHAT_NANOCHAT                                                                                                  \
    "{begin}<|bos|>{system}{content}\\n\\n{next}{user}<|user_start|>{content}<|user_end|>"                             \
    "{assistant}<|assistant_start|>{content}<|assistant_end|>{python}<|python_start|>{content}<|python_end|>"          \
    "{python_output}<|output_start|>{content}<|output_end|>"

/* Limits of a custom template, which is read in linear time otherwise. */
enum { CHAT_ROLES_MAX = 64, CHAT_SPECIALS_MAX = 1024 };

typedef struct ChatMessage {
    const char *role, *content;
} ChatMessage;

/* Flags of a message for chat_encode_flags(). */
enum {
    CHAT_UNTRAINED = 1, /* an assistant's message that is not trained on */
    CHAT_CONTINUED = 2, /* the next message, or what the model generates, continues this one: its turn does not end */
    CHAT_PART = 4,      /* a part of the turn that the message before began: its role names a section of the template */
};

/* A piece of a template text. */
typedef enum { CHAT_WORDS, CHAT_SPECIAL, CHAT_ROLE, CHAT_EOS } ChatPieceKind;

typedef struct ChatPiece {
    ChatPieceKind kind;
    TextBuffer text; /* CHAT_WORDS, CHAT_SPECIAL */
} ChatPiece;

typedef struct ChatText {
    ChatPiece *pieces;
    int count, capacity;
} ChatText;

typedef struct ChatSection {
    char *role;
    ChatText prefix, suffix;
    bool joins; /* with the user's message that follows */
} ChatSection;

typedef struct ChatTemplate {
    char *spec;       /* its source, which is stored in shards and checkpoints */
    char *stop;       /* text that ends the assistant's turn; "" for the tokenizer's end of text */
    JinjaChat *model; /* a model's own template, which has no sections; else NULL */
    ChatText begin;
    ChatSection *sections;
    int count;
} ChatTemplate;

/* ---- parsing --------------------------------------------------------------------------------------------------- */

static inline void chat_text_free(ChatText *t) {
    for (int i = 0; i < t->count; i++) text_free(&t->pieces[i].text);
    free(t->pieces);
    *t = (ChatText){0};
}

static inline void chat_template_free(ChatTemplate *c) {
    for (int i = 0; i < c->count; i++) {
        free(c->sections[i].role);
        chat_text_free(&c->sections[i].prefix);
        chat_text_free(&c->sections[i].suffix);
    }
    chat_text_free(&c->begin);
    if (c->model) jinja_chat_free(c->model);
    free(c->model);
    free(c->sections);
    free(c->spec);
    free(c->stop);
    *c = (ChatTemplate){0};
}

/* Adds a piece; words are appended to preceding words. */
static inline void chat_piece(ChatText *t, ChatPieceKind kind, const char *text, size_t n) {
    const ChatPiece *last = t->count ? &t->pieces[t->count - 1] : NULL;
    if (kind != CHAT_WORDS || !last || last->kind != CHAT_WORDS) {
        if (t->count == t->capacity) {
            t->capacity = t->capacity ? 2 * t->capacity : 8;
            t->pieces = (ChatPiece *)xrealloc(t->pieces, (size_t)t->capacity, sizeof *t->pieces);
        }
        t->pieces[t->count++] = (ChatPiece){.kind = kind};
    }
    if (text) text_append(&t->pieces[t->count - 1].text, text, n);
}

/* Returns the length of the special token <...> at s, or 0. */
static inline size_t chat_special_length(const char *s) {
    if (s[0] != '<') return 0;
    size_t n = 1;
    while (s[n] && (isalnum((unsigned char)s[n]) || strchr("|/_-:", s[n]))) n++;
    return n > 1 && s[n] == '>' ? n + 1 : 0;
}

/* Copies the name of the tag {name} at s. Returns the length of the tag, or 0 if there is none. */
static inline size_t chat_tag(const char *s, char name[32]) {
    size_t n = 1;
    if (s[0] != '{') return 0;
    while (s[n] && (isalnum((unsigned char)s[n]) || strchr("_-", s[n]))) n++;
    if (s[n] != '}' || n < 2 || n > 31) return 0;
    memcpy(name, s + 1, n - 1);
    name[n - 1] = 0;
    return n + 1;
}

static inline const ChatSection *chat_section(const ChatTemplate *c, const char *role) {
    const ChatSection *any = NULL;
    for (int i = 0; i < c->count; i++) {
        if (!strcmp(c->sections[i].role, role)) return &c->sections[i];
        if (!strcmp(c->sections[i].role, "any")) any = &c->sections[i];
    }
    return any;
}

/* The section of a part of an assistant's content, python or python_output; NULL: the template has none. */
static inline const ChatSection *chat_part_section(const ChatTemplate *c, const char *part) {
    for (int i = 0; i < c->count; i++)
        if (!strcmp(c->sections[i].role, part)) return &c->sections[i];
    return NULL;
}

/* Begins the section of the tag `name` and sets *text to its prefix. */
static inline bool chat_open_section(ChatTemplate *c, const char *name, ChatText **text, Error *e) {
    if (!strcmp(name, "begin")) {
        *text = &c->begin;
        return !c->begin.count || error_set(e, "chat template: has {begin} twice");
    }
    for (int i = 0; i < c->count; i++)
        if (!strcmp(c->sections[i].role, name)) return error_set(e, "chat template: has {%s} twice", name);
    if (c->count == CHAT_ROLES_MAX) return error_set(e, "chat template: has more than %d roles", CHAT_ROLES_MAX);
    c->sections = (ChatSection *)xrealloc(c->sections, (size_t)c->count + 1, sizeof *c->sections);
    c->sections[c->count] = (ChatSection){.role = xstrdup(name)};
    *text = &c->sections[c->count++].prefix;
    return true;
}

/* Ends a section whose message is joined with the next one. Its texts become part of a content. */
static inline bool chat_join_section(ChatSection *section, ChatText **text, Error *e) {
    const ChatText *const texts[] = {&section->prefix, &section->suffix};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < texts[k]->count; i++)
            if (texts[k]->pieces[i].kind != CHAT_WORDS)
                return error_set(e, "chat template: section {%s} has {next}, which allows only text before it",
                                 section->role);
    static const char *const others[] = {"user", "assistant", "any", "python", "python_output"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (!strcmp(section->role, others[i]))
            return error_set(e, "chat template: {next} is not allowed in section {%s}", section->role);
    section->joins = true;
    *text = NULL;
    return true;
}

/* Handles a tag: {role} and {eos} are pieces, {content} switches to the suffix, {next} ends it, any other tag opens a
 * section. */
static inline bool chat_parse_tag(ChatTemplate *c, const char *name, ChatText **text, bool *open, Error *e) {
    ChatSection *section = c->count ? &c->sections[c->count - 1] : NULL;
    const bool in_prefix = section && *text == &section->prefix;
    if (*text && !strcmp(name, "eos")) chat_piece(*text, CHAT_EOS, NULL, 0);
    else if (*text && *text != &c->begin && !strcmp(name, "role")) chat_piece(*text, CHAT_ROLE, NULL, 0);
    else if (in_prefix && !strcmp(name, "content")) {
        *text = &section->suffix;
        *open = false;
    } else if (section && *text == &section->suffix && !strcmp(name, "next"))
        return chat_join_section(section, text, e);
    else if (!strcmp(name, "next") || !strcmp(name, "role") || !strcmp(name, "content") || !strcmp(name, "eos"))
        return error_set(e, "chat template: {%s} is not allowed at this place", name);
    else if (*open) return error_set(e, "chat template: section {%s} has no {content}", section->role);
    else {
        if (!chat_open_section(c, name, text, e)) return false;
        *open = *text != &c->begin;
    }
    return true;
}

static inline bool chat_parse_sections(ChatTemplate *c, const char *s, Error *e) {
    ChatText *text = NULL;
    bool open = false; /* the current section has no {content} yet */
    int specials = 0;
    while (*s) {
        char name[32];
        const size_t tag = chat_tag(s, name), special = chat_special_length(s);
        size_t step = tag ? tag : special ? special : s[0] == '\\' && s[1] ? 2 : 1;
        if (tag) {
            if (!chat_parse_tag(c, name, &text, &open, e)) return false;
        } else if (!text && c->count)
            return error_set(e, "chat template: '%.20s' follows {next}, expected another section", s);
        else if (!text)
            return error_set(
                e,
                "chat template '%.60s': expected chatml, llama, nanochat, plain, or a text that begins with "
                "{user}, {any} or another role",
                c->spec);
        else if (special && ++specials > CHAT_SPECIALS_MAX)
            return error_set(e, "chat template: has more than %d special tokens", CHAT_SPECIALS_MAX);
        else if (special) chat_piece(text, CHAT_SPECIAL, s, special);
        else if (step == 2) chat_piece(text, CHAT_WORDS, s[1] == 'n' ? "\n" : s[1] == 't' ? "\t" : s + 1, 1);
        else if (*s == '{') return error_set(e, "chat template: '%.20s' is not a tag; write a literal brace as \\{", s);
        else chat_piece(text, CHAT_WORDS, s, 1);
        s += step;
    }
    if (open) return error_set(e, "chat template: section {%s} has no {content}", c->sections[c->count - 1].role);
    return true;
}

/* Determines the text that ends the assistant's turn. */
static inline bool chat_find_stop(ChatTemplate *c, Error *e) {
    const ChatSection *assistant = chat_section(c, "assistant");
    if (!assistant) return error_set(e, "chat template: has no section {assistant} or {any}");
    const ChatText *suffix = &assistant->suffix;
    for (int i = 0; i < suffix->count && !c->stop; i++) {
        if (suffix->pieces[i].kind == CHAT_SPECIAL) c->stop = xstrdup(suffix->pieces[i].text.text);
        if (suffix->pieces[i].kind == CHAT_EOS) c->stop = xstrdup("");
    }
    if (!c->stop && suffix->count == 1 && suffix->pieces[0].kind == CHAT_WORDS)
        c->stop = xstrdup(suffix->pieces[0].text.text);
    return c->stop || error_set(e, "chat template: nothing after the assistant's {content} ends its turn; "
                                   "expected a special token, such as {eos}");
}

/* Parses a template in Jinja. */
static inline bool chat_parse_model(ChatTemplate *c, Error *e) {
    c->model = (JinjaChat *)xcalloc(1, sizeof *c->model);
    if (!jinja_chat_parse(c->model, c->spec, e)) return false;
    c->stop = xstrndup(c->model->tail.text ? c->model->tail.text : "", c->model->tail.length);
    return true;
}

/* Parses a model's own template, "chatml", "llama", "nanochat", "plain" or a custom template. */
static inline bool chat_template_parse(ChatTemplate *c, const char *spec, Error *e) {
    *c = (ChatTemplate){.spec = xstrdup(spec)};
    char name[32];
    if (!chat_tag(spec, name) && jinja_chat_is(spec)) {
        if (chat_parse_model(c, e)) return true;
        chat_template_free(c);
        return false;
    }
    const char *text = !strcmp(spec, "chatml")            ? CHAT_CHATML
                       : !strcmp(spec, "llama")           ? CHAT_LLAMA
                       : !strcmp(spec, "nanochat")        ? CHAT_NANOCHAT
                       : !strcmp(spec, "plain") || !*spec ? CHAT_PLAIN
                                                          : spec;
    if (chat_parse_sections(c, text, e) && chat_find_stop(c, e)) return true;
    chat_template_free(c);
    return false;
}

/* ---- encoding -------------------------------------------------------------------------------------------------- */

static inline bool chat_add_text_specials(const ChatText *text, Tokenizer *t, Error *e) {
    for (int i = 0; i < text->count; i++)
        if (text->pieces[i].kind == CHAT_SPECIAL && !tokenizer_add_special(t, text->pieces[i].text.text, e))
            return false;
    return true;
}

/* Adds the template's missing special tokens to the tokenizer, in the template's order. */
static inline bool chat_add_specials(const ChatTemplate *c, Tokenizer *t, Error *e) {
    if (!chat_add_text_specials(&c->begin, t, e)) return false;
    for (int i = 0; i < c->count; i++)
        if (!chat_add_text_specials(&c->sections[i].prefix, t, e) ||
            !chat_add_text_specials(&c->sections[i].suffix, t, e))
            return false;
    return true;
}

/* Appends the tokens of a template text. */
static inline bool chat_encode_text(const ChatText *text, const Tokenizer *t, const char *role, TokenList *out,
                                    Error *e) {
    for (int i = 0; i < text->count; i++) {
        const ChatPiece *p = &text->pieces[i];
        if (p->kind == CHAT_EOS) token_list_append(out, t->eos);
        else if (p->kind == CHAT_SPECIAL) {
            const int32_t id = tokenizer_special(t, p->text.text);
            if (id < 0) return error_set(e, "chat template: the tokenizer has no special token %s", p->text.text);
            token_list_append(out, id);
        } else {
            /* words around {role} are encoded as one text */
            TextBuffer words = {0};
            for (; i < text->count && (text->pieces[i].kind == CHAT_WORDS || text->pieces[i].kind == CHAT_ROLE); i++)
                text_string(&words, text->pieces[i].kind == CHAT_ROLE ? role : text->pieces[i].text.text);
            i--;
            const bool ok = tokenizer_encode(t, words.text, words.length, TOKENIZER_CONTINUES, out, e);
            text_free(&words);
            if (!ok) return false;
        }
    }
    return true;
}

/* Returns the id of the token that ends the assistant's turn, or -1 if it is not a single token of this tokenizer. */
static inline int32_t chat_stop_token(const ChatTemplate *c, const Tokenizer *t) {
    bool trained;
    if (!*c->stop) return t->eos;
    if (c->model && jinja_chat_stop(c->model, t, &trained) >= 0) return jinja_chat_stop(c->model, t, &trained);
    const int32_t special = tokenizer_special(t, c->stop);
    if (special >= 0 || chat_special_length(c->stop)) return special;
    TokenList ids = {0};
    const bool one = tokenizer_encode(t, c->stop, strlen(c->stop), false, &ids, NULL) && ids.count == 1;
    const int32_t id = one ? ids.ids[0] : -1;
    token_list_free(&ids);
    return id;
}

/* Finds the section of a role; a model's own template has an empty one for every role. A role must be a single word,
 * because it becomes part of the template's text. */
static inline const ChatSection *chat_find_section(const ChatTemplate *c, const char *role, Error *e) {
    static const ChatSection own = {0};
    if (c->model) return &own;
    const ChatSection *section = chat_section(c, role);
    bool word = *role != 0;
    for (const char *s = role; *s; s++) word = word && (isalnum((unsigned char)*s) || strchr("_-", *s));
    if (word && section) return section;
    error_set(e, "chat template: has no section for role '%.40s'", role);
    return NULL;
}

/* chat_find_section() of a message with these flags. */
static inline const ChatSection *chat_flagged_section(const ChatTemplate *c, const char *role, int flag, Error *e) {
    if (!(flag & CHAT_PART)) return chat_find_section(c, role, e);
    const ChatSection *section = chat_part_section(c, role);
    if (!section) error_set(e, "chat template: has no section {%.40s} for parts of an assistant's content", role);
    return section;
}

/* ---- a model's own template ------------------------------------------------------------------------------------ */

/* Sets the flags of a conversation's messages, as jinja_chat_turns() reads them. flags: one of each message, or NULL. A
 * message that is continued is joined with the one after it. */
static inline void chat_conversation_flags(json_t *conversation, const uint8_t *flags) {
    json_t *list = json_object_get(conversation, "messages"), *trained = json_array();
    const size_t count = json_array_size(list);
    for (size_t i = 0, at = 0; flags && i < count; i++, at++) {
        if (flags[i] & CHAT_CONTINUED) {
            json_t *message = json_copy(json_array_get(list, at)), *next = json_array_get(list, at + 1);
            TextBuffer joined = {0};
            text_string(&joined, json_string_value(json_object_get(message, "content")));
            json_object_set_new(conversation, "continued", json_integer((json_int_t)joined.length));
            if (next) {
                text_string(&joined, json_string_value(json_object_get(next, "content")));
                json_object_update_missing(message, next);
                i++;
            }
            json_object_set_new(message, "content", json_string(joined.text));
            json_array_set_new(list, at, message);
            if (next) json_array_remove(list, at + 1);
            text_free(&joined);
        }
        json_array_append_new(trained, json_boolean(!(flags[i] & CHAT_UNTRAINED)));
    }
    json_object_set_new(conversation, "trained", trained);
}

/* Returns the messages as a conversation in JSON, or NULL with *e set if a text is not UTF-8. */
static inline json_t *chat_conversation(const ChatMessage *messages, const uint8_t *flags, int count, Error *e) {
    json_t *list = json_array();
    for (int i = 0; i < count; i++) {
        json_t *message = json_pack("{s:s,s:s}", "role", messages[i].role, "content", messages[i].content);
        if (message) json_array_append_new(list, message);
        else {
            json_decref(list);
            return error_set(e, "chat template: message %d is not UTF-8", i), NULL;
        }
    }
    json_t *conversation = json_pack("{s:o}", "messages", list);
    chat_conversation_flags(conversation, flags);
    return conversation;
}

/* Appends the tokens of a conversation {messages, tools, documents, trained, continued} in a model's own template.
 * `mask` is as in chat_encode_flags(). last: only the assistant's last message is trained. If `together` is not NULL, it
 * is set to whether every assistant message is trained; if not, each has to be encoded with the messages before it and
 * `last`. */
static inline bool chat_encode_conversation(const ChatTemplate *c, const Tokenizer *t, const json_t *conversation,
                                            bool generation_prompt, bool last, TokenList *out, uint8_t **mask,
                                            bool *together, Error *e) {
    JinjaTurns turns;
    if (!jinja_chat_turns(c->model, t, conversation, generation_prompt, &turns, e)) return false;
    if (together) *together = turns.together;
    const bool ok = jinja_chat_encode(&turns, t, last, out, mask, e);
    jinja_turns_free(&turns);
    return ok;
}

/* Appends the text that chat_encode_conversation() encodes. */
static inline bool chat_render_conversation(const ChatTemplate *c, const json_t *conversation, bool generation_prompt,
                                            TextBuffer *out, Error *e) {
    JinjaText text;
    if (!jinja_chat_prompt(c->model, conversation, generation_prompt, &text, e)) return false;
    text_append(out, text.text, text.length);
    jinja_text_free(&text);
    return true;
}

/* ---- conversations --------------------------------------------------------------------------------------------- */

/* The section of a message that is joined with the one after it; NULL: it is not. */
static inline const ChatSection *chat_joins(const ChatTemplate *c, const ChatMessage *m) {
    const ChatSection *section = chat_section(c, m->role);
    return section && section->joins ? section : NULL;
}

/* Checks that message i, which is joined with the next one, is followed by a user's. */
static inline bool chat_check_next(const ChatMessage *messages, int count, int i, Error *e) {
    if (i + 1 < count && !strcmp(messages[i + 1].role, "user")) return true;
    return error_set(
        e, "chat template: the message of role %s must be followed by a user's message, with which it is joined",
        messages[i].role);
}

static inline void chat_render_text(const ChatText *text, const Tokenizer *t, const char *role, TextBuffer *out) {
    for (int i = 0; i < text->count; i++) {
        const ChatPiece *p = &text->pieces[i];
        if (p->kind == CHAT_EOS) tokenizer_decode(t, &t->eos, 1, true, out);
        else text_string(out, p->kind == CHAT_ROLE ? role : p->text.text);
    }
}

/* Appends the content of message i, after that of a message that is joined with it. */
static inline void chat_render_content(const ChatTemplate *c, const Tokenizer *t, const ChatMessage *messages, int i,
                                       TextBuffer *out) {
    const ChatSection *before = i ? chat_joins(c, &messages[i - 1]) : NULL;
    if (before) {
        chat_render_text(&before->prefix, t, "", out);
        text_string(out, messages[i - 1].content);
        chat_render_text(&before->suffix, t, "", out);
    }
    text_string(out, messages[i].content);
}

/* Appends the tokens of `count` messages in a template with sections. See chat_encode_flags(). */
static inline bool chat_encode_sections(const ChatTemplate *c, const Tokenizer *t, const ChatMessage *messages,
                                        const uint8_t *flags, int count, bool generation_prompt, TokenList *out,
                                        uint8_t **mask, Error *e) {
    const int32_t stop = chat_stop_token(c, t);
    if (stop < 0)
        return error_set(
            e, "chat template: the assistant's turn ends with '%s', which is not one token of the tokenizer", c->stop);
    int32_t done = out->count; /* mask entries */
    bool open = false;         /* the message before continues in this one */
    if (!chat_encode_text(&c->begin, t, "", out, e)) return false;
    for (int i = 0; i <= count; i++) {
        if (i == count && (!generation_prompt || open)) break;
        const char *role = i < count ? messages[i].role : "assistant";
        const int flag = i < count && flags ? flags[i] : 0;
        const bool part = flag & CHAT_PART;
        const ChatSection *section = chat_flagged_section(c, role, flag, e);
        const int32_t first = out->count;
        if (!section) return false;
        if (section->joins) {
            if (!chat_check_next(messages, count, i, e)) return false;
            continue;
        }
        if ((!open || part) && !chat_encode_text(&section->prefix, t, role, out, e)) return false;
        if (i == count) break;
        const int32_t content = out->count;
        TextBuffer text = {0};
        chat_render_content(c, t, messages, i, &text);
        const bool ok = tokenizer_encode(t, text.text, text.length, TOKENIZER_CONTINUES, out, e);
        text_free(&text);
        if (!ok) return false;
        int32_t end = out->count;
        open = flag & (CHAT_CONTINUED | CHAT_PART);
        if ((!open || part) && !chat_encode_text(&section->suffix, t, role, out, e)) return false;
        if (!mask) continue;
        const bool trained = !strcmp(role, part ? "python" : "assistant") && !(flag & CHAT_UNTRAINED);
        while (end < out->count && (part || out->ids[end] != stop)) end++; /* include the stop token, if present */
        end += end < out->count;
        *mask = (uint8_t *)xrealloc(*mask, (size_t)out->count, 1);
        for (; done < out->count; done++) (*mask)[done] = trained && done >= (part ? first : content) && done < end;
    }
    if (!mask) return true;
    *mask = (uint8_t *)xrealloc(*mask, (size_t)out->count, 1);
    for (; done < out->count; done++) (*mask)[done] = 0;
    return true;
}

/* Appends the tokens of `count` messages to `out`. With generation_prompt, the template's text before an assistant's
 * content is also appended, unless the last message is continued. flags: (count) of CHAT_UNTRAINED, CHAT_CONTINUED and
 * CHAT_PART, or NULL; a template of a model's own has its flags in the conversation, and no parts. If `mask` is not NULL,
 * *mask is extended to out->count entries: 1 on trained assistant contents, on their calls and on the tokens that end them,
 * else 0. Entries for ids that were already in `out` are kept. */
static inline bool chat_encode_flags(const ChatTemplate *c, const Tokenizer *t, const ChatMessage *messages,
                                     const uint8_t *flags, int count, bool generation_prompt, TokenList *out,
                                     uint8_t **mask, Error *e) {
    if (!c->model) return chat_encode_sections(c, t, messages, flags, count, generation_prompt, out, mask, e);
    json_t *conversation = chat_conversation(messages, flags, count, e);
    const bool ok =
        conversation && chat_encode_conversation(c, t, conversation, generation_prompt, false, out, mask, NULL, e);
    json_decref(conversation);
    return ok;
}

/* chat_encode_flags() without flags. */
static inline bool chat_encode(const ChatTemplate *c, const Tokenizer *t, const ChatMessage *messages, int count,
                               bool generation_prompt, TokenList *out, uint8_t **mask, Error *e) {
    return chat_encode_flags(c, t, messages, NULL, count, generation_prompt, out, mask, e);
}

/* Appends what the template writes after an assistant's content, up to the token that ends the turn. */
static inline bool chat_encode_end(const ChatTemplate *c, const Tokenizer *t, TokenList *out, Error *e) {
    const int32_t stop = chat_stop_token(c, t), first = out->count;
    const ChatSection *assistant = c->model ? NULL : chat_find_section(c, "assistant", e);
    if (stop < 0) return error_set(e, "chat template: the assistant's turn does not end with one token");
    if (c->model) {
        token_list_append(out, stop);
        return true;
    }
    if (!assistant || !chat_encode_text(&assistant->suffix, t, "assistant", out, e)) return false;
    for (int32_t i = first; i < out->count; i++)
        if (out->ids[i] == stop) out->count = i + 1;
    return true;
}

/* Appends the tokens between the content of a user's last message and that of the assistant's answer. */
static inline bool chat_encode_opening(const ChatTemplate *c, const Tokenizer *t, TokenList *out, Error *e) {
    if (c->model) return jinja_chat_encode_opening(c->model, t, out, e);
    const ChatSection *user = chat_find_section(c, "user", e);
    const ChatSection *assistant = user ? chat_find_section(c, "assistant", e) : NULL;
    return assistant && chat_encode_text(&user->suffix, t, "user", out, e) &&
           chat_encode_text(&assistant->prefix, t, "assistant", out, e);
}

/* Appends the tokens that follow the token that ends an assistant's turn, up to the content of the assistant's next one:
 * the rest of what the template writes after a turn, then `messages`, a list of {role, content}, then the template's text
 * before an assistant's content. */
static inline bool chat_encode_answer(const ChatTemplate *c, const Tokenizer *t, const json_t *messages, TokenList *out,
                                      Error *e) {
    if (c->model) return jinja_chat_encode_answer(c->model, t, messages, out, e);
    const int32_t stop = chat_stop_token(c, t);
    const ChatSection *assistant = chat_find_section(c, "assistant", e);
    TokenList owed = {0};
    bool ok = assistant && chat_encode_text(&assistant->suffix, t, "assistant", &owed, e);
    int32_t at = 0;
    while (at < owed.count && owed.ids[at] != stop) at++;
    for (at++; ok && at < owed.count; at++) token_list_append(out, owed.ids[at]);
    token_list_free(&owed);
    for (size_t i = 0; ok && i < json_array_size(messages); i++) {
        const json_t *message = json_array_get(messages, i);
        const char *role = json_string_value(json_object_get(message, "role"));
        const char *content = json_string_value(json_object_get(message, "content"));
        const ChatSection *section = chat_find_section(c, role, e);
        if (section && section->joins)
            return error_set(e, "chat template: a message of role %s has no place after an answer", role);
        ok = section && chat_encode_text(&section->prefix, t, role, out, e) &&
             tokenizer_encode(t, content, strlen(content), TOKENIZER_CONTINUES, out, e) &&
             chat_encode_text(&section->suffix, t, role, out, e);
    }
    return ok && chat_encode_text(&assistant->prefix, t, "assistant", out, e);
}

/* ---- rendering ------------------------------------------------------------------------------------------------- */

/* Appends the messages as the text that chat_encode_flags() encodes. */
static inline bool chat_render(const ChatTemplate *c, const Tokenizer *t, const ChatMessage *messages,
                               const uint8_t *flags, int count, bool generation_prompt, TextBuffer *out, Error *e) {
    if (c->model) {
        json_t *conversation = chat_conversation(messages, flags, count, e);
        const bool ok = conversation && chat_render_conversation(c, conversation, generation_prompt, out, e);
        json_decref(conversation);
        return ok;
    }
    bool open = false;
    chat_render_text(&c->begin, t, "", out);
    for (int i = 0; i < count + generation_prompt; i++) {
        if (i == count && open) break;
        const char *role = i < count ? messages[i].role : "assistant";
        const int flag = i < count && flags ? flags[i] : 0;
        const bool part = flag & CHAT_PART;
        const ChatSection *section = chat_flagged_section(c, role, flag, e);
        if (!section) return false;
        if (section->joins) {
            if (!chat_check_next(messages, count, i, e)) return false;
            continue;
        }
        if (!open || part) chat_render_text(&section->prefix, t, role, out);
        if (i == count) break;
        chat_render_content(c, t, messages, i, out);
        open = flag & (CHAT_CONTINUED | CHAT_PART);
        if (!open || part) chat_render_text(&section->suffix, t, role, out);
    }
    return true;
}

#endif
