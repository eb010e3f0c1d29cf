/* row_fields.h - the fields of a row: the names under which each is read, in the conventions that data sets use, what kind
 * of record a row becomes, and which of its fields nothing reads.
 *
 * ROW_FIELDS is the one table of names. `make_shard --help-fields` prints it, and data/README.md shows that output.
 *
 *   TRL                  messages; prompt, completion; prompt, chosen, rejected; prompt, completion, label; prompt,
 *                        completions, labels; text; tools
 *                        TPO: reference
 *   here                 prompt, completions: a ranking
 *   LLaMA-Factory        alpaca: instruction, input, output, system, history, kto_tag; sharegpt: conversations, tools
 *   axolotl              the same; question, chosen, rejected; instruction, chosen_response, rejected_response
 *   OpenAI               messages; input.messages, preferred_output, non_preferred_output
 *   verl                 prompt, reward_model.ground_truth, data_source
 *   open-instruct        messages, ground_truth, dataset
 *   T0 (P3), FLAN        inputs, targets; in P3 inputs_pretokenized, targets_pretokenized, next to lists of ids
 *
 * A name may be a path, such as reward_model.ground_truth or turns.0.text. A field is read under the first of its names
 * that the row has; a name that the user gives replaces all of them, and a template joins several fields to one:
 *
 *   RowFields f = {.name = {[FIELD_COMPLETION] = "answer"}, .pattern = {[FIELD_PROMPT] = "{question}\n{hint}"}};
 */
#ifndef DATA_ROW_FIELDS_H
#define DATA_ROW_FIELDS_H

#include "../llmc/base/error.h"    /* Error, error_set, xstrndup, xcalloc, ... */
#include "../llmc/base/jsonl.h"    /* Jsonl, jsonl_error, jsonl_type, jsonl_value_text */
#include "../llmc/base/suggest.h"  /* suggest */
#include "../llmc/base/text.h"     /* TextBuffer, text_append, text_string, text_free */
#include "../llmc/reward/verify.h" /* verify_kind */
#include <ctype.h>

typedef enum { ROW_AUTO, ROW_CHAT, ROW_PROMPT, ROW_PREFERENCE, ROW_STEP, ROW_UNPAIRED, ROW_TEXT, ROW_KINDS } RowKind;

/* X(field, option, names, help, decides): names are separated by |, the first that a row has is read. decides: the kind of
 * a row depends on it, so the first row must have it if the user names it. */
#define ROW_FIELDS(X)                                                                                                  \
    X(MESSAGES, "messages-field", "messages|conversations|conversation|input.messages",                                \
      "list of {role, content} or {from, value}", true)                                                                \
    X(SYSTEM, "system-field", "system|system_prompt", "system message of a row whose messages have none", false)       \
    X(HISTORY, "history-field", "history", "list of [user, assistant], the turns before the prompt", false)            \
    X(PROMPT, "prompt-field", "prompt|instruction|question|query|problem|input|inputs_pretokenized|inputs",            \
      "text or list of messages", true)                                                                                \
    X(INPUT, "input-field", "input|context", "text that follows an instruction after a newline", false)                \
    X(COMPLETION, "completion-field", "completion|output|response|targets_pretokenized|targets",                       \
      "text or list of messages", true)                                                                                \
    X(ANSWER, "answer-field", "answer|ground_truth|reward_model.ground_truth|solution|label",                          \
      "reference answer for the verifier", false)                                                                      \
    X(TASK, "task-field", "task|data_source|dataset", "name of the verifier", false)                                   \
    X(CHOSEN, "chosen-field", "chosen|preferred_output|chosen_response", "preferred completion", true)                 \
    X(REJECTED, "rejected-field", "rejected|non_preferred_output|rejected_response", "other completion", true)         \
    X(REFERENCE, "reference-field", "reference", "gold answer of a pair, for train_dpo --loss-type tpo", false)        \
    X(MARGIN, "margin-field", "margin", "number: how much better the chosen completion is", false)                     \
    X(COMPLETIONS, "completions-field", "completions", "list of steps; or of completions, from the best to the worst", \
      true)                                                                                                            \
    X(LABELS, "labels-field", "labels", "list of true, false or shares, one per step", true)                           \
    X(LABEL, "label-field", "label|kto_tag", "whether the completion is good", true)                                   \
    X(TEXT, "text-field", "text", "text of a document", true)                                                          \
    X(TOOLS, "tools-field", "tools|functions|input.tools", "list of tools for a model's own template", false)          \
    X(CLUSTER, "cluster-field", "cluster", "group of tasks, which may be held out: a name", false)

typedef enum {
#define ROW_FIELD(field, option, names, help, decides) FIELD_##field,
    ROW_FIELDS(ROW_FIELD)
#undef ROW_FIELD
        FIELD_COUNT
} RowFieldId;

typedef struct RowField {
    const char *option, *names, *help;
    bool decides;
} RowField;

static const RowField row_field[FIELD_COUNT] = {
#define ROW_FIELD(field, option, names, help, decides) {option, names, help, decides},
    ROW_FIELDS(ROW_FIELD)
#undef ROW_FIELD
};

/* Which fields make a row of a kind; the table of --help-fields. Kinds are tried in this order. */
static const struct RowKindFields {
    RowKind kind;
    const char *name, *fields;
} row_kinds[] = {
    {ROW_PREFERENCE, "preference",
     "chosen, rejected, prompt or messages (else their common beginning); or prompt, completions; margin, reference"},
    {ROW_STEP, "step", "prompt or messages, completions, labels"},
    {ROW_UNPAIRED, "unpaired", "prompt, completion, label; or messages that end with the assistant's, label"},
    {ROW_CHAT, "chat", "messages; or prompt or messages, completion; system, history, tools"},
    {ROW_PROMPT, "prompt", "prompt; or messages that end with the user's, answer; task, system, history, tools"},
    {ROW_TEXT, "text", "text"},
};

static inline const char *row_kind_name(RowKind kind) {
    for (size_t i = 0; i < sizeof row_kinds / sizeof *row_kinds; i++)
        if (row_kinds[i].kind == kind) return row_kinds[i].name;
    return "auto";
}

enum { ROW_USED_MAX = 64, ROW_UNREAD_MAX = 64 };

/* How the fields of rows are read, and those of the current row. */
typedef struct RowFields {
    const char *name[FIELD_COUNT];    /* given by the user, or NULL: those of the table */
    const char *pattern[FIELD_COUNT]; /* text with {name} for fields that replaces the field, or NULL */

    bool label_in_pattern; /* a pattern has {label}, so that the field is not the label of a completion */
    const char *pattern_option[FIELD_COUNT]; /* the option that it is from; NULL: the field's own */

    json_t *made[FIELD_COUNT]; /* texts of the patterns for the current row */
    const char *used[ROW_USED_MAX];
    size_t used_length[ROW_USED_MAX]; /* names that have been read, without the rest of a path */
    int used_count;
    const char *unread[ROW_UNREAD_MAX]; /* what is not read of it; owned */
    int unread_count;
    int unread_more; /* those beyond ROW_UNREAD_MAX */
} RowFields;

/* Forgets, without freeing it, what belongs to the current row, in a copy of another one's options. */
static inline void row_fields_begin(RowFields *f) {
    memset(f->made, 0, sizeof f->made);
    f->used_count = f->unread_count = f->unread_more = 0;
}

/* Frees what belongs to the current row. */
static inline void row_fields_clear(RowFields *f) {
    for (int i = 0; i < FIELD_COUNT; i++) {
        json_decref(f->made[i]);
        f->made[i] = NULL;
    }
    for (int i = 0; i < f->unread_count; i++) free((char *)f->unread[i]);
    f->used_count = f->unread_count = f->unread_more = 0;
}

/* ---- values ---------------------------------------------------------------------------------------------------- */

/* Returns the value of a field, looked up by name, else as a path of names and list indices separated by dots. NULL if
 * it is absent; JSON's null is a value here. */
static inline json_t *row_value(json_t *row, const char *name) {
    json_t *value = json_object_get(row, name);
    if (value || !strchr(name, '.')) return value;
    value = row;
    for (const char *rest = name; value && rest;) {
        char *part = xstrndup(rest, strcspn(rest, "."));
        const bool index = *part && !part[strspn(part, "0123456789")];
        if (!json_is_array(value)) value = json_object_get(value, part);
        else value = index ? json_array_get(value, strtoul(part, NULL, 10)) : NULL;
        free(part);
        rest = strchr(rest, '.');
        if (rest) rest++;
    }
    return value;
}

/* row_value(), or NULL if the value is null. */
static inline json_t *row_get(json_t *row, const char *name) {
    json_t *value = row_value(row, name);
    return json_is_null(value) ? NULL : value;
}

/* Marks a field of the row as read. name: a name or a path, of n bytes. */
static inline void row_use(RowFields *f, const char *name, size_t n) {
    if (f->used_count == ROW_USED_MAX) return;
    f->used[f->used_count] = name;
    f->used_length[f->used_count++] = n;
}

/* Whether the field is one that has been read, or a path into it. */
static inline bool row_is_used(const RowFields *f, const char *key) {
    const size_t length = strlen(key);
    for (int i = 0; i < f->used_count; i++)
        if (!memcmp(f->used[i], key, length < f->used_length[i] ? length : f->used_length[i]) &&
            (f->used_length[i] == length || (f->used_length[i] > length && f->used[i][length] == '.')))
            return true;
    return false;
}

/* Whether messages are no prompt, because the user named another one. */
static inline bool row_prompt_named(const RowFields *f) {
    return !f->name[FIELD_MESSAGES] && (f->name[FIELD_PROMPT] || f->pattern[FIELD_PROMPT]);
}

/* Copies the first name of the field that the row has, even with the value null, to name[size]. Returns the place of that
 * name in the table or in the user's option, which outlive the row; NULL if the row has none. */
static inline const char *row_name(const RowFields *f, json_t *row, RowFieldId field, char *name, size_t size) {
    const char *given = f->name[field];
    if (field == FIELD_MESSAGES && row_prompt_named(f)) return NULL;
    for (const char *s = given ? given : row_field[field].names; *s;) {
        const size_t n = given ? strlen(s) : strcspn(s, "|"), kept = n < size ? n : size - 1;
        memcpy(name, s, kept);
        name[kept] = '\0';
        if (row_value(row, name)) return s;
        s += n + (s[n] == '|');
    }
    return NULL;
}

/* The name of the option that makes this field of several, such as prompt-template. */
static inline const char *row_template_option(RowFieldId field, char name[40]) {
    const char *option = row_field[field].option;
    snprintf(name, 40, "%.*stemplate", (int)(strlen(option) - strlen("field")), option);
    return name;
}

/* The name under which a message names the field: the row's, the user's, or the usual one. */
static inline const char *row_called(const RowFields *f, json_t *row, RowFieldId field, char name[128]) {
    char option[40];
    if (f->pattern[field]) snprintf(name, 128, "--%s", row_template_option(field, option));
    else if (!row_name(f, row, field, name, 128))
        snprintf(name, 128, "%.*s", f->name[field] ? 127 : (int)strcspn(row_field[field].names, "|"),
                 f->name[field] ? f->name[field] : row_field[field].names);
    return name;
}

/* Whether the row has the field, even with the value null. */
static inline bool row_has(const RowFields *f, json_t *row, RowFieldId field) {
    char name[128];
    return f->pattern[field] || row_name(f, row, field, name, sizeof name);
}

/* Returns the value of the field under the first of its names that the row has, or NULL if that is null or there is
 * none. */
static inline json_t *row_peek(const RowFields *f, json_t *row, RowFieldId field) {
    char name[128];
    if (f->made[field]) return f->made[field];
    return row_name(f, row, field, name, sizeof name) ? row_get(row, name) : NULL;
}

/* row_peek() that marks the field as read. */
static inline json_t *row_read(RowFields *f, json_t *row, RowFieldId field) {
    char name[128];
    if (f->made[field]) return f->made[field];
    const char *place = row_name(f, row, field, name, sizeof name);
    if (!place) return NULL;
    row_use(f, place, strlen(name));
    return row_get(row, name);
}

/* Lists the fields of a row: "a, b, c". */
static inline void row_list(json_t *row, char *names, size_t size) {
    const char *key;
    json_t *value;
    snprintf(names, size, "%s", json_object_size(row) ? "" : "of an empty object");
    json_object_foreach(row, key, value) {
        const size_t n = strlen(names);
        snprintf(names + n, size - n, "%s%s", n ? ", " : "", key);
    }
}

/* Sets the error for a field `name` of an option that the row does not have. */
static inline bool row_missing(const Jsonl *j, json_t *row, const char *name, const char *option, Error *e) {
    char names[240], hint[120] = "";
    const char **keys = (const char **)xcalloc(json_object_size(row), sizeof *keys), *key;
    json_t *value;
    int count = 0;
    json_object_foreach(row, key, value) keys[count++] = key;
    const char *near = suggest(name, keys, count);
    if (near) snprintf(hint, sizeof hint, "; did you mean '%.90s'?", near);
    free(keys);
    row_list(row, names, sizeof names);
    return jsonl_error(j, NULL, e, "has no field '%.80s' (--%s); it has the fields %s%s", name, option, names, hint);
}

/* ---- patterns -------------------------------------------------------------------------------------------------- */

/* Appends a value to `out`: a text as it is, any other value as JSON. */
static inline bool row_scalar(const Jsonl *j, const json_t *value, const char *field, TextBuffer *out, Error *e) {
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

/* Replaces the escapes \n, \t and \\ of a command-line argument. The caller owns the result; NULL gives NULL. */
static inline const char *row_unescape(const char *text) {
    if (!text) return NULL;
    char *copy = xstrdup(text), *to = copy;
    for (const char *s = text; *s; s++) {
        const bool escaped = *s == '\\' && s[1];
        if (escaped) s++;
        *to++ = escaped && *s == 'n' ? '\n' : escaped && *s == 't' ? '\t' : *s;
    }
    *to = 0;
    return copy;
}

/* Returns the length of the piece of a pattern at s, or 0 if a brace is alone: {name}, {{, }} or other text. */
static inline size_t row_pattern_piece(const char *s) {
    if (*s == '{' || *s == '}') {
        if (s[1] == *s) return 2;
        const size_t n = *s == '{' ? strcspn(s + 1, "{}") : 0;
        return n && s[n + 1] == '}' ? n + 2 : 0;
    }
    return strcspn(s, "{}");
}

/* Checks the braces of a pattern. *fields: whether it has a {field}; if NULL, it must have one. */
static inline bool row_pattern_check(const char *pattern, bool *fields, Error *e) {
    bool any = false;
    for (const char *s = pattern; *s;) {
        const size_t n = row_pattern_piece(s);
        if (!n) return error_set(e, "'%.40s': a brace is neither part of {field} nor doubled", s);
        any = any || (*s == '{' && s[1] != '{');
        s += n;
    }
    if (fields) *fields = any;
    return any || fields || error_set(e, "'%.60s': has no {field}", pattern);
}

/* Whether a pattern, or NULL, has {name} for one of the names of the label. */
static inline bool row_pattern_has_label(const RowFields *f, const char *pattern) {
    char brace[64];
    if (!pattern || f->name[FIELD_LABEL]) return false;
    for (const char *s = row_field[FIELD_LABEL].names; *s;) {
        const size_t n = strcspn(s, "|");
        snprintf(brace, sizeof brace, "{%.*s}", (int)n, s);
        if (strstr(pattern, brace)) return true;
        s += n + (s[n] == '|');
    }
    return false;
}

/* Appends the text of a pattern for this row; every field that it names must have a value. option: the pattern's option, for
 * messages. f: the fields are marked as read; may be NULL. */
static inline bool row_fill(RowFields *f, const Jsonl *j, json_t *row, const char *pattern, const char *option,
                            TextBuffer *out, Error *e) {
    text_append(out, "", 0);
    for (const char *s = pattern; *s;) {
        const size_t n = row_pattern_piece(s);
        if (n > 2 && *s == '{') {
            char *name = xstrndup(s + 1, n - 2);
            const json_t *value = row_get(row, name);
            const bool ok = value ? row_scalar(j, value, name, out, e) : row_missing(j, row, name, option, e);
            free(name);
            if (!ok) return false;
            if (f) row_use(f, s + 1, n - 2);
        } else text_append(out, s, *s == '{' || *s == '}' ? 1 : n);
        s += n;
    }
    return true;
}

/* Makes the texts of the patterns for this row. */
static inline bool row_patterns(RowFields *f, const Jsonl *j, json_t *row, Error *e) {
    for (int i = 0; i < FIELD_COUNT; i++) {
        if (!f->pattern[i]) continue;
        TextBuffer text = {0};
        char option[40];
        const char *named = f->pattern_option[i] ? f->pattern_option[i] : row_template_option((RowFieldId)i, option);
        const bool ok = row_fill(f, j, row, f->pattern[i], named, &text, e);
        if (ok) f->made[i] = json_stringn(text.text, text.length);
        text_free(&text);
        if (!ok) return false;
    }
    return true;
}

/* ---- labels ---------------------------------------------------------------------------------------------------- */

/* Returns the value of a label, an integer from 0 to `most`, or -1 for anything else: true and false, numbers (good or
 * bad: -1 is bad, too), or a text with one of these or a word. */
static inline int row_label(const json_t *label, int most) {
    static const char *const words[2][14] = {{"false", "0", "0.0", "-1", "-1.0", "bad", "no", "-", "negative",
                                              "incorrect", "wrong", "undesirable", "rejected", "thumbs_down"},
                                             {"true", "1", "1.0", "+1", "good", "yes", "+", "positive", "correct",
                                              "right", "desirable", "chosen", "thumbs_up", "accepted"}};
    if (json_is_boolean(label)) return json_is_true(label);
    if (json_is_number(label)) {
        const double value = json_number_value(label);
        if (most == 1 && value == -1) return 0;
        return value >= 0 && value <= most && value == (int)value ? (int)value : -1;
    }
    const char *text = json_string_value(label);
    for (int good = 0; text && good < 2; good++)
        for (int i = 0; i < 14; i++)
            if (!strcasecmp(text, words[good][i])) return good;
    return -1;
}

/* Describes a value that is not a label. */
static inline void row_describe(const json_t *value, char *text, size_t size) {
    if (json_is_string(value)) snprintf(text, size, "'%.40s'", json_string_value(value));
    else if (json_is_number(value)) snprintf(text, size, "%g", json_number_value(value));
    else snprintf(text, size, "%s", jsonl_type(value));
}

/* ---- kinds ----------------------------------------------------------------------------------------------------- */

/* Returns the role of a message: the text in `role`, else what is in `from`, or NULL. */
static inline const json_t *row_role_of(const json_t *message) {
    const json_t *role = json_object_get(message, "role");
    return json_is_string(role) ? role : json_object_get(message, "from");
}

/* Sets task[64] to the verifier that is called like the data set in data_source or dataset, without the data set's owner
 * (openai/gsm8k). False if there is none, or the row has a field `task`. */
static inline bool row_task_of_source(const RowFields *f, json_t *row, char task[64]) {
    char name[128];
    if (f->name[FIELD_TASK] || !row_name(f, row, FIELD_TASK, name, sizeof name)) return false;
    const char *source = json_string_value(row_get(row, name)), *slash = source ? strrchr(source, '/') : NULL;
    if (!source || !strcmp(name, "task")) return false;
    snprintf(task, 64, "%s", slash ? slash + 1 : source);
    for (char *s = task; *s; s++) *s = (char)tolower((unsigned char)*s);
    return *task && verify_kind(task) >= 0;
}

/* Whether a role is the assistant's, in any convention. */
static inline bool row_is_assistant(const char *role) {
    static const char *const names[] = {"assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "function_call"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcasecmp(role, names[i])) return true;
    return false;
}

/* Whether a row of kind preference is a ranking: it has completions, and neither chosen nor rejected. */
static inline bool row_is_ranking(const RowFields *f, json_t *row) {
    return row_peek(f, row, FIELD_COMPLETIONS) && !row_has(f, row, FIELD_CHOSEN) && !row_has(f, row, FIELD_REJECTED);
}

/* Infers the kind of a row from its fields; ROW_AUTO if they do not determine it. */
static inline RowKind row_kind(const RowFields *f, json_t *row) {
    const json_t *messages = row_peek(f, row, FIELD_MESSAGES);
    const size_t turns = json_array_size(messages);
    const char *last = turns ? json_string_value(row_role_of(json_array_get(messages, turns - 1))) : NULL;
    const bool prompt = row_has(f, row, FIELD_PROMPT), answered = last && row_is_assistant(last);
    const bool completion = f->pattern[FIELD_COMPLETION] || row_peek(f, row, FIELD_COMPLETION);
    char name[128], task[64];
    if (row_has(f, row, FIELD_CHOSEN) && row_has(f, row, FIELD_REJECTED)) return ROW_PREFERENCE;
    if ((prompt || turns) && row_peek(f, row, FIELD_COMPLETIONS) && row_peek(f, row, FIELD_LABELS)) return ROW_STEP;
    if ((prompt || turns) && row_is_ranking(f, row)) return ROW_PREFERENCE;
    if (((prompt && completion) || answered) && row_has(f, row, FIELD_LABEL) && !f->label_in_pattern)
        return ROW_UNPAIRED;
    if (messages && !completion && !answered && row_peek(f, row, FIELD_ANSWER)) return ROW_PROMPT;
    if (messages) return ROW_CHAT;
    if (prompt && (f->pattern[FIELD_PROMPT] || row_peek(f, row, FIELD_PROMPT))) {
        if (completion) return ROW_CHAT;
        /* a question alone may be the half of a row whose other half has an unknown name */
        row_name(f, row, FIELD_PROMPT, name, sizeof name);
        if (f->pattern[FIELD_PROMPT] || f->name[FIELD_PROMPT] || !strcmp(name, "prompt") ||
            row_peek(f, row, FIELD_ANSWER) || row_has(f, row, FIELD_TASK) || row_task_of_source(f, row, task) ||
            json_object_size(row) == 1)
            return ROW_PROMPT;
        return ROW_AUTO;
    }
    return row_peek(f, row, FIELD_TEXT) || f->pattern[FIELD_TEXT] ? ROW_TEXT : ROW_AUTO;
}

#endif
