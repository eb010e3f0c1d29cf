/* question.h - questions for a judge: a template that is filled with a prompt, completions and the like.
 *
 * A template is a text in sections. A section begins with {system}, {user} or {assistant}; text before the first of these
 * belongs to the user. {assistant} can only be the last section: it is the beginning of the judge's answer, which the judge
 * continues. In a section these names stand for texts, and {{ is a brace:
 *
 *   {prompt}         the prompt; of a prompt given as messages, these
 *   {completion}     the completion to judge
 *   {completion_a}, {completion_b}    two completions to compare
 *   {completions}    all completions of a prompt, numbered
 *   {number}         the number of the one that is asked about
 *   {answer}         the record's reference answer
 *   {rubric}         a criterion of the record's rubric; with --rubric-at-once all of them, numbered
 *   {messages}       the whole conversation with its completion, calls of tools and their results
 *   {principle}      a line of --judge-principles
 *   {scale}          the highest number of a score
 *
 * A filled-in text is never read as a template again, and names of special tokens in it remain plain text. In a chat template
 * with sections each text is encoded on its own, so that no token joins a text with the template's words.
 *
 *     JudgeTemplate t;
 *     TokenList ids = {0};
 *     JudgeQuestion q = {0};
 *     ModelText text;
 *     q.field[JUDGE_PROMPT] = (TextSlice){"2+3=", 4};
 *     if (!judge_template_parse(&t, "{user}Q: {prompt}\n{assistant}Verdict:", "my template", &e)) return false;
 *     if (!judge_template_encode(&t, &text, &q, &ids, &e)) return false;
 *     judge_template_free(&t);
 */
#ifndef LLMC_JUDGE_QUESTION_H
#define LLMC_JUDGE_QUESTION_H

#include "../base/error.h"       /* Error, error_set, xcalloc, xrealloc, ... */
#include "../base/text.h"        /* TextBuffer, text_clear, TextSlice, text_free, ... */
#include "../model/model_text.h" /* ModelText */
#include "../text/chat.h"        /* ChatMessage, CHAT_CONTINUED, chat_encode_flags */
#include <jansson.h>

typedef enum {
    JUDGE_PROMPT,
    JUDGE_COMPLETION,
    JUDGE_COMPLETION_A,
    JUDGE_COMPLETION_B,
    JUDGE_COMPLETIONS,
    JUDGE_NUMBER,
    JUDGE_ANSWER,
    JUDGE_RUBRIC,
    JUDGE_MESSAGES,
    JUDGE_PRINCIPLE,
    JUDGE_SCALE,
    JUDGE_FIELDS
} JudgeField; /* in the order of judge_field_name */

static const char *const judge_field_name[JUDGE_FIELDS] = {"prompt",      "completion", "completion_a", "completion_b",
                                                           "completions", "number",     "answer",       "rubric",
                                                           "messages",    "principle",  "scale"};

/* The texts of a question. Bytes that are not UTF-8, and NULs, become U+FFFD. */
typedef struct JudgeQuestion {
    TextSlice field[JUDGE_FIELDS];
} JudgeQuestion;

/* Words of a template, or a field. */
typedef struct JudgePiece {
    int field; /* a JudgeField; -1: words */
    char *words;
} JudgePiece;

enum { JUDGE_SECTIONS_MAX = 3, JUDGE_TEMPLATE_MAX = 1 << 20 };

typedef struct JudgeSection {
    const char *role;
    JudgePiece *piece;
    int count;
} JudgeSection;

typedef struct JudgeTemplate {
    JudgeSection section[JUDGE_SECTIONS_MAX];
    int count;
    bool begins; /* the last section is the assistant's */
} JudgeTemplate;

static inline void judge_template_free(JudgeTemplate *t) {
    for (int i = 0; i < t->count; i++) {
        for (int k = 0; k < t->section[i].count; k++) free(t->section[i].piece[k].words);
        free(t->section[i].piece);
    }
    *t = (JudgeTemplate){0};
}

/* Whether a section of the template has the field. */
static inline bool judge_template_has(const JudgeTemplate *t, JudgeField field) {
    for (int i = 0; i < t->count; i++)
        for (int k = 0; k < t->section[i].count; k++)
            if (t->section[i].piece[k].field == (int)field) return true;
    return false;
}

/* ---- parsing ----------------------------------------------------------------------------------------------------- */

static inline void judge_section_add(JudgeSection *s, int field, const char *words, size_t n) {
    s->piece = (JudgePiece *)xrealloc(s->piece, (size_t)s->count + 1, sizeof *s->piece);
    s->piece[s->count++] = (JudgePiece){field, words ? xstrndup(words, n) : NULL};
}

/* Begins a section. name: for messages. */
static inline bool judge_template_open(JudgeTemplate *t, const char *role, const char *name, Error *e) {
    for (int i = 0; i < t->count; i++)
        if (!strcmp(t->section[i].role, role)) return error_set(e, "%s: has {%s} twice", name, role);
    if (t->begins) return error_set(e, "%s: {%s} follows {assistant}, which must be the last section", name, role);
    t->section[t->count++] = (JudgeSection){.role = role};
    t->begins = !strcmp(role, "assistant");
    return true;
}

/* Reads the {name} at s. Returns its length; 0 with *e set if it is unknown. role: set if it begins a section. */
static inline size_t judge_template_tag(const char *s, const char **role, int *field, const char *name, Error *e) {
    static const char *const roles[] = {"system", "user", "assistant"};
    const size_t n = strcspn(s + 1, "}\n{");
    *role = NULL;
    for (int i = 0; i < 3; i++)
        if (strlen(roles[i]) == n && !memcmp(s + 1, roles[i], n)) *role = roles[i];
    for (int i = 0; i < JUDGE_FIELDS; i++)
        if (strlen(judge_field_name[i]) == n && !memcmp(s + 1, judge_field_name[i], n)) *field = i;
    if (s[n + 1] == '}' && (*role || *field >= 0)) return n + 2;
    error_set(
        e,
        "%s: '%.30s' is not a field; expected prompt, completion, completion_a, completion_b, completions, number, "
        "answer, rubric, messages, principle, scale, or a section; write a brace as {{",
        name, s);
    return 0;
}

/* Parses a template. name: of its file, for messages. */
static inline bool judge_template_parse(JudgeTemplate *t, const char *text, const char *name, Error *e) {
    TextBuffer words = {0};
    bool ok = true;
    *t = (JudgeTemplate){0};
    text_clear(&words);
    for (const char *s = text; ok;) {
        const char *role = NULL;
        int field = -1;
        size_t n = 1;
        if (*s == '{' && s[1] != '{') {
            n = judge_template_tag(s, &role, &field, name, e);
            ok = n > 0;
        } else if (*s == '{') n = 2;
        if (!ok) break;
        const bool word = *s && !role && field < 0;
        if (word) text_append(&words, s, 1);
        else {
            if (words.length || field >= 0) ok = t->count || judge_template_open(t, "user", name, e);
            if (ok && words.length) judge_section_add(&t->section[t->count - 1], -1, words.text, words.length);
            text_clear(&words);
            if (ok && field >= 0) judge_section_add(&t->section[t->count - 1], field, NULL, 0);
            if (ok && role) ok = judge_template_open(t, role, name, e);
        }
        if (!*s) break;
        s += n;
    }
    text_free(&words);
    if (ok && (t->count == 0 || (t->begins && t->count == 1)))
        ok = error_set(e, "%s: the template has no text for the user", name);
    if (!ok) judge_template_free(t);
    return ok;
}

/* ---- filling in -------------------------------------------------------------------------------------------------- */

/* Appends a text as it can be encoded: without NULs and invalid bytes. */
static inline void judge_append_clean(TextBuffer *out, TextSlice text) {
    for (size_t i = 0; i < text.length;) {
        const char *nul = (const char *)memchr(text.text + i, 0, text.length - i);
        const size_t n = nul ? (size_t)(nul - text.text) - i : text.length - i;
        utf8_clean(out, text.text + i, n);
        if (nul) text_string(out, "\xEF\xBF\xBD");
        i += n + (nul != NULL);
    }
}

static inline void judge_append_piece(const JudgePiece *p, const JudgeQuestion *q, TextBuffer *out) {
    if (p->field < 0) text_string(out, p->words);
    else judge_append_clean(out, q->field[p->field]);
}

/* Sets *out to the text of a section. */
static inline void judge_section_text(const JudgeSection *s, const JudgeQuestion *q, TextBuffer *out) {
    text_clear(out);
    for (int k = 0; k < s->count; k++) judge_append_piece(&s->piece[k], q, out);
}

/* Appends the question's tokens in the judge's chat template, up to where its answer begins or continues. */
static inline bool judge_template_encode(const JudgeTemplate *t, const ModelText *text, const JudgeQuestion *q,
                                         TokenList *out, Error *e) {
    int count = 0, room = 1;
    for (int i = 0; i < t->count; i++) room += t->section[i].count + 1;
    ChatMessage *message = (ChatMessage *)xcalloc((size_t)room, sizeof *message);
    uint8_t *flag = (uint8_t *)xcalloc((size_t)room, 1);
    for (int i = 0; i < t->count; i++) {
        const JudgeSection *s = &t->section[i];
        TextBuffer words = {0};
        text_clear(&words);
        for (int k = 0; k < s->count && !text->chat.model; k++) { /* pieces of one message, each encoded on its own */
            TextBuffer part = {0};
            text_clear(&part);
            judge_append_piece(&s->piece[k], q, &part);
            message[count] = (ChatMessage){s->role, part.text};
            flag[count++] = CHAT_CONTINUED;
        }
        if (text->chat.model) judge_section_text(s, q, &words);
        message[count] = (ChatMessage){s->role, words.text};
        flag[count++] = t->begins && i == t->count - 1 ? CHAT_CONTINUED : 0;
    }
    const bool ok = chat_encode_flags(&text->chat, &text->tokenizer, message, flag, count, !t->begins, out, NULL, e);
    for (int i = 0; i < count; i++) free((char *)message[i].content);
    free(message), free(flag);
    return ok;
}

/* The question as the messages of a chat completion, for a judge behind HTTP. The caller owns them. */
static inline json_t *judge_template_messages(const JudgeTemplate *t, const JudgeQuestion *q) {
    json_t *list = json_array();
    TextBuffer text = {0};
    for (int i = 0; i < t->count; i++) {
        judge_section_text(&t->section[i], q, &text);
        json_array_append_new(list, json_pack("{s:s,s:s}", "role", t->section[i].role, "content", text.text));
    }
    text_free(&text);
    return list;
}

#endif
