/* tool_format.h - formats of tool calls: how they are read from the text of a turn, and how results are written.
 *
 *   format     a call, as drawn                                        a turn ends at     a result, as observed
 *   hermes     <tool_call>{"name": N, "arguments": {...}}</tool_call>  the end token      messages of role tool
 *   llama3     {"name": N, "parameters": {...}} as the whole turn      the end token      messages of role tool
 *   search-r1  <search>QUERY</search>                                  </search>          \n\n<information>RESULT</information>\n\n
 *   retool     <code>CODE</code>, with or without a fence              </code>            <interpreter>RESULT</interpreter>
 *   python-tokens   <|python_start|>CODE<|python_end|>                 <|python_end|>     <|output_start|>RESULT<|output_end|>
 *   a text     call=<calc>{arguments}</calc>;result=<r>{content}</r>   </calc>            <r>RESULT</r>
 *
 * hermes (Hermes, Qwen) and llama3 end turns with the chat template's token, and their results are messages, which the
 * template writes: a model's own as transformers does; a template with sections gets a user's message with
 * <tool_response> for each result (what Qwen2.5's template writes), or one of role ipython (llama3). The others stay
 * within the assistant's turn and have one tool, whose only required argument is the text between the marks. search-r1
 * also ends a turn at </answer>, which completes the trajectory. The marks of python-tokens are special tokens, and the
 * turn goes on without a result if the code is empty or fails (karpathy/nanochat, nanochat/engine.py). In a format of one's own, `end` names the text at which a
 * turn ends, if it is not the text after {arguments}; \n, \t and \; are a newline, a tab and a semicolon.
 *
 * A call in JSON is one value, read by the JSON library. arguments (or parameters) is an object, or a text that holds
 * one. What cannot be read becomes a call with an error, which is its result.
 *
 *     ToolFormat f;
 *     ToolCalls calls;
 *     if (!tool_format_open(&f, "hermes", &e)) die("%s", e.text);
 *     tool_format_read(&f, text, strlen(text), &calls);
 *     for (int i = 0; i < calls.count; i++) puts(calls.call[i].error ? calls.call[i].error : calls.call[i].name);
 *     tool_calls_free(&calls);
 *     tool_format_free(&f);
 */
#ifndef LLMC_TOOLS_TOOL_FORMAT_H
#define LLMC_TOOLS_TOOL_FORMAT_H

#include "../base/error.h"     /* xstrdup, error_set, Error, PRINTF_LIKE, ... */
#include "../base/json_text.h" /* json_utf8 */
#include "../base/text.h"      /* TextBuffer, text_string, text_format, text_free, ... */
#include "../text/chat.h"      /* ChatTemplate, chat_encode_answer, chat_part_section */
#include "../text/tokenizer.h" /* Tokenizer, TOKENIZER_CONTINUES, tokenizer_encode, tokenizer_decode, ... */
#include <jansson.h>

#define TOOL_FORMATS                                                                                                   \
    "hermes, llama3, search-r1, retool, python-tokens, or a text such as call=<t>{arguments}</t>;result={content}"

typedef enum { TOOL_HERMES, TOOL_LLAMA3, TOOL_TAGS, TOOL_PYTHON_TOKENS } ToolFormatKind;

/* The marks of TOOL_PYTHON_TOKENS. */
enum { PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END, PYTHON_TOKENS };
static const char *const tool_python_tokens[PYTHON_TOKENS] = {"<|python_start|>", "<|python_end|>", "<|output_start|>",
                                                              "<|output_end|>"};

/* The sentence of Search-R1 (2503.09516) after an action that is neither a search nor an answer. */
#define TOOL_SEARCH_R1_INVALID                                                                                           \
    "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. If I " \
    "want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n"

typedef struct ToolFormat {
    ToolFormatKind kind;
    char *open, *close;   /* marks of a call */
    char *end[2];         /* texts that end a turn; NULL: only the template's token */
    char *before, *after; /* of a result; TOOL_TAGS */
    char *invalid;        /* the answer to a call that could not be read; NULL: an error as a result */
    char *tool;           /* one tool: its name and that of its argument; tool_format_tool() */
    char *argument;
    int32_t mark[PYTHON_TOKENS]; /* TOOL_PYTHON_TOKENS: ids of the marks; tool_format_tokens() */
} ToolFormat;

typedef struct ToolCall {
    char *name;        /* "" if it could not be read */
    json_t *arguments; /* an object, or NULL */
    char *error;       /* NULL: the call can be run */
} ToolCall;

typedef struct ToolCalls {
    ToolCall *call;
    int count;
    bool malformed;          /* the last call could not be read */
    int arguments_as_string; /* calls whose arguments were a text */
    size_t before;           /* bytes of text before the first call */
    bool text_after;         /* text follows the last call */
    size_t overrun;          /* bytes after the end text */
} ToolCalls;

static inline void tool_format_free(ToolFormat *f) {
    free(f->open), free(f->close), free(f->before), free(f->after), free(f->invalid), free(f->tool), free(f->argument);
    for (int i = 0; i < 2; i++) free(f->end[i]);
    *f = (ToolFormat){0};
}

static inline void tool_calls_free(ToolCalls *c) {
    for (int i = 0; i < c->count; i++) {
        free(c->call[i].name), free(c->call[i].error);
        json_decref(c->call[i].arguments);
    }
    free(c->call);
    *c = (ToolCalls){0};
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static inline bool tool_format_tags(ToolFormat *f, const char *open, const char *close, const char *end,
                                    const char *before, const char *after) {
    f->kind = TOOL_TAGS;
    f->open = xstrdup(open);
    f->close = xstrdup(close);
    f->end[0] = xstrdup(end);
    f->before = xstrdup(before);
    f->after = xstrdup(after);
    return true;
}

/* Reads the value of a key of a format of one's own, up to a semicolon, with its escapes. */
static inline char *tool_format_value(const char **at) {
    TextBuffer value = {0};
    text_append(&value, "", 0);
    for (; **at && **at != ';'; ++*at) {
        if (**at == '\\' && (*at)[1]) {
            ++*at;
            text_append(&value, **at == 'n' ? "\n" : **at == 't' ? "\t" : *at, 1);
        } else text_append(&value, *at, 1);
    }
    if (**at) ++*at;
    return value.text;
}

/* Divides a value at its placeholder; false if it has none. */
static inline bool tool_format_divide(char *value, const char *place, char **before, char **after) {
    char *at = strstr(value, place);
    if (!at) return false;
    *after = xstrdup(at + strlen(place));
    *at = 0;
    *before = value;
    return true;
}

/* Reads call=...;result=...;end=... */
static inline bool tool_format_own(ToolFormat *f, const char *spec, Error *e) {
    f->kind = TOOL_TAGS;
    for (const char *at = spec; *at;) {
        const size_t n = strcspn(at, "=;");
        const char *key = at;
        if (at[n] != '=') return error_set(e, "'%.60s' has no '='", at);
        at += n + 1;
        char *value = tool_format_value(&at);
        bool ok = true;
        if (n == 4 && !memcmp(key, "call", n) && !f->open)
            ok = tool_format_divide(value, "{arguments}", &f->open, &f->close);
        else if (n == 6 && !memcmp(key, "result", n) && !f->before)
            ok = tool_format_divide(value, "{content}", &f->before, &f->after);
        else if (n == 3 && !memcmp(key, "end", n) && !f->end[0]) f->end[0] = value;
        else ok = false;
        if (!ok) {
            free(value);
            return error_set(
                e, "'%.60s': must be call=TEXT{arguments}TEXT, result=TEXT{content}TEXT or end=TEXT, each once", key);
        }
    }
    if (!f->open || !*f->open || !*f->close)
        return error_set(e, "call=TEXT{arguments}TEXT is missing, with a text before and after {arguments}");
    if (!f->before) return error_set(e, "result=TEXT{content}TEXT is missing");
    if (!f->end[0]) f->end[0] = xstrdup(f->close);
    if (!*f->end[0]) return error_set(e, "the text of end= is empty");
    const size_t n = strlen(f->close), m = strlen(f->end[0]);
    return (m >= n && !strcmp(f->end[0] + m - n, f->close)) || (n >= m && !strcmp(f->close + n - m, f->end[0])) ||
           error_set(e, "end=%.40s: a turn must end where the call ends, at %.40s", f->end[0], f->close);
}

/* Opens the format `spec`; see above. */
static inline bool tool_format_open(ToolFormat *f, const char *spec, Error *e) {
    Error why;
    *f = (ToolFormat){0};
    if (!strcmp(spec, "hermes")) {
        f->open = xstrdup("<tool_call>");
        f->close = xstrdup("</tool_call>");
        return true;
    }
    if (!strcmp(spec, "llama3")) {
        f->kind = TOOL_LLAMA3;
        return true;
    }
    if (!strcmp(spec, "python-tokens")) {
        f->kind = TOOL_PYTHON_TOKENS;
        return true;
    }
    if (!strcmp(spec, "search-r1")) {
        f->end[1] = xstrdup("</answer>");
        f->invalid = xstrdup(TOOL_SEARCH_R1_INVALID);
        return tool_format_tags(f, "<search>", "</search>", "</search>", "\n\n<information>", "</information>\n\n");
    }
    if (!strcmp(spec, "retool"))
        return tool_format_tags(f, "<code>", "</code>", "</code>", "<interpreter>", "</interpreter>");
    if (!strncmp(spec, "call=", 5) || strstr(spec, ";call=")) {
        if (tool_format_own(f, spec, &why)) return true;
        tool_format_free(f);
        return error_set(e, "tool format '%.100s': %s", spec, why.text);
    }
    return error_set(e, "tool format '%.100s': unknown, must be " TOOL_FORMATS, spec);
}

/* The format of a chat template, by the token that ends its turns; NULL: it has none. */
static inline const char *tool_format_of(const ChatTemplate *c) {
    if (c->stop && !strcmp(c->stop, "<|im_end|>")) return "hermes";
    if (c->stop && strstr(c->stop, "<|im_end|>") == c->stop) return "hermes";
    if (c->stop && strstr(c->stop, "<|eot_id|>") == c->stop) return "llama3";
    if (chat_part_section(c, "python") && strstr(c->spec, tool_python_tokens[PYTHON_START])) return "python-tokens";
    if (!strcmp(c->spec, "nanochat")) return "python-tokens";
    return NULL;
}

/* tool_format_of() for a server, which reads calls from texts: NULL instead of python-tokens. */
static inline const char *tool_format_of_texts(const ChatTemplate *c) {
    const char *format = tool_format_of(c);
    return format && strcmp(format, "python-tokens") ? format : NULL;
}

/* Whether calls and results stay within the assistant's turn, so that there is one tool with one argument. */
static inline bool tool_format_within(const ToolFormat *f) {
    return f->kind == TOOL_TAGS || f->kind == TOOL_PYTHON_TOKENS;
}

/* Finds the special tokens of python-tokens; other formats have none. */
static inline bool tool_format_tokens(ToolFormat *f, const Tokenizer *t, Error *e) {
    for (int i = 0; i < PYTHON_TOKENS && f->kind == TOOL_PYTHON_TOKENS; i++) {
        f->mark[i] = tokenizer_special(t, tool_python_tokens[i]);
        if (f->mark[i] < 0)
            return error_set(
                e,
                "tool format python-tokens: the tokenizer has no special token %s; data made with the chat "
                "template nanochat adds it",
                tool_python_tokens[i]);
    }
    return true;
}

/* Sets the tool that a format within the turn calls: the only one, whose schema has exactly one required argument. */
static inline bool tool_format_tool(ToolFormat *f, const char *name, const json_t *schema, Error *e) {
    const json_t *parameters = json_object_get(json_object_get(schema, "function"), "parameters");
    const json_t *required = json_object_get(parameters, "required");
    if (json_array_size(required) != 1)
        return error_set(e, "tool %.80s: it has %zu required arguments, and this tool format can write only 1", name,
                         json_array_size(required));
    free(f->tool), free(f->argument);
    f->tool = xstrdup(name);
    f->argument = xstrdup(json_string_value(json_array_get(required, 0)));
    return true;
}

/* ---- reading calls --------------------------------------------------------------------------------------------- */

/* Adds a call and returns it. */
static inline ToolCall *tool_calls_add(ToolCalls *c, const char *name) {
    c->call = (ToolCall *)xrealloc(c->call, (size_t)c->count + 1, sizeof *c->call);
    c->call[c->count] = (ToolCall){.name = xstrdup(name)};
    return &c->call[c->count++];
}

/* Adds a call that could not be read. */
PRINTF_LIKE(2, 3) static inline void tool_calls_malformed(ToolCalls *c, const char *format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    tool_calls_add(c, "")->error = xstrdup(text);
    c->malformed = true;
}

/* Adds the call {name, arguments}; key: "arguments" or "parameters". */
static inline void tool_calls_json(ToolCalls *c, const json_t *value, const char *key) {
    const char *name = json_string_value(json_object_get(value, "name"));
    json_t *arguments = json_object_get(value, key);
    if (!arguments) arguments = json_object_get(value, strcmp(key, "arguments") ? "arguments" : "parameters");
    ToolCall *call = tool_calls_add(c, name ? name : "");
    if (json_is_string(arguments)) {
        json_t *inner = json_loads(json_string_value(arguments), 0, NULL);
        if (json_is_object(inner)) {
            call->arguments = json_incref(inner);
            c->arguments_as_string++;
        }
        json_decref(inner);
    } else if (json_is_object(arguments)) call->arguments = json_incref(arguments);
    if (!name) call->error = xstrdup("the call has no \"name\", a string");
    else if (!call->arguments) {
        TextBuffer text = {0};
        text_format(&text, "the call of '%.80s' has no \"%s\", an object", name, key);
        call->error = text.text;
    }
}

static inline size_t tool_skip_space(const char *text, size_t n, size_t at) {
    while (at < n && (text[at] == ' ' || (text[at] >= '\t' && text[at] <= '\r'))) at++;
    return at;
}

/* Whether text[0..n) begins with a word. */
static inline bool tool_begins(const char *text, size_t n, const char *word) {
    return n >= strlen(word) && !memcmp(text, word, strlen(word));
}

/* Reads all calls between <tool_call> and </tool_call>. */
static inline void tool_read_hermes(const ToolFormat *f, const char *text, size_t n, ToolCalls *c) {
    size_t at = 0;
    c->before = n;
    for (const char *found; (found = (const char *)memmem(text + at, n - at, f->open, strlen(f->open)));) {
        json_error_t why;
        const size_t begin = (size_t)(found - text);
        if (!c->count) c->before = begin;
        at = tool_skip_space(text, n, begin + strlen(f->open));
        json_t *value = json_loadb(text + at, n - at, JSON_DISABLE_EOF_CHECK, &why);
        if (!value) {
            tool_calls_malformed(c, "a <tool_call> could not be read: %.200s",
                                 at < n ? why.text : "nothing follows it");
            return;
        }
        at = tool_skip_space(text, n, at + (size_t)why.position);
        if (!tool_begins(text + at, n - at, f->close)) {
            json_decref(value);
            tool_calls_malformed(c, "a <tool_call> could not be read: no %s follows its JSON value", f->close);
            return;
        }
        at += strlen(f->close);
        tool_calls_json(c, value, "arguments");
        json_decref(value);
    }
    c->text_after = c->count && tool_skip_space(text, n, at) < n;
}

/* Reads a turn that is one JSON object with a name. */
static inline void tool_read_llama3(const char *text, size_t n, ToolCalls *c) {
    json_error_t why;
    const size_t at = tool_skip_space(text, n, 0);
    c->before = n;
    if (at == n || text[at] != '{') return;
    json_t *value = json_loadb(text + at, n - at, JSON_DISABLE_EOF_CHECK, &why);
    if (!value) {
        c->before = at;
        tool_calls_malformed(c, "the call could not be read: %.200s", why.text);
        return;
    }
    if (json_object_get(value, "name")) {
        c->before = at;
        tool_calls_json(c, value, "parameters");
        c->text_after = tool_skip_space(text, n, at + (size_t)why.position) < n;
    }
    json_decref(value);
}

/* Removes a fence (three backquotes) around a text. */
static inline void tool_unfence(const char **text, size_t *n) {
    const char *open = (const char *)memmem(*text, *n, "```", 3);
    const char *line = open ? (const char *)memchr(open, '\n', *n - (size_t)(open - *text)) : NULL;
    if (!line) return;
    const size_t rest = *n - (size_t)(line + 1 - *text);
    const char *close = (const char *)memmem(line + 1, rest, "```", 3);
    *n = close ? (size_t)(close - line - 1) : rest;
    *text = line + 1;
}

/* Reads the call whose closing mark ends the turn. */
static inline void tool_read_tags(const ToolFormat *f, const char *text, size_t n, ToolCalls *c) {
    const size_t opens = strlen(f->open);
    const char *open = NULL, *close = NULL;
    c->before = n;
    for (const char *p = text; (p = (const char *)memmem(p, n - (size_t)(p - text), f->open, opens)); p += opens)
        open = p;
    if (!open) return;
    c->before = (size_t)(open - text);
    const char *from = open + opens;
    close = (const char *)memmem(from, n - (size_t)(from - text), f->close, strlen(f->close));
    const char *answer =
        f->end[1] ? (const char *)memmem(from, n - (size_t)(from - text), f->end[1], strlen(f->end[1])) : NULL;
    if (!close && answer) {
        c->before = n;
        return;
    }
    if (!close) {
        tool_calls_malformed(c, "a %s has no %s", f->open, f->close);
        return;
    }
    const char *inner = from;
    size_t length = (size_t)(close - from);
    if (!strcmp(f->open, "<code>")) tool_unfence(&inner, &length);
    ToolCall *call = tool_calls_add(c, f->tool ? f->tool : "");
    call->arguments = json_object();
    json_object_set_new(call->arguments, f->argument ? f->argument : "text", json_utf8(inner, length));
    c->overrun = n - (size_t)(close + strlen(f->close) - text);
}

/* Reads the call of a turn of n tokens in python-tokens: what is between the last <|python_start|> and the
 * <|python_end|> that ends the turn. Returns the number of tokens before it, n if there is none. The caller frees *c. */
static inline int32_t tool_format_read_tokens(const ToolFormat *f, const Tokenizer *t, const int32_t *tokens, int32_t n,
                                              ToolCalls *c) {
    TextBuffer code = {0};
    int32_t start = n - 2;
    *c = (ToolCalls){0};
    if (n < 1 || tokens[n - 1] != f->mark[PYTHON_END]) return n;
    while (start >= 0 && tokens[start] != f->mark[PYTHON_START]) start--;
    if (start < 0) {
        tool_calls_malformed(c, "a %s has no %s", tool_python_tokens[PYTHON_END], tool_python_tokens[PYTHON_START]);
        return n;
    }
    tokenizer_decode(t, tokens + start + 1, n - start - 2, true, &code);
    ToolCall *call = tool_calls_add(c, f->tool ? f->tool : "");
    call->arguments = json_object();
    json_object_set_new(call->arguments, f->argument ? f->argument : "text",
                        json_utf8(code.text ? code.text : "", code.length));
    if (n - start == 2) call->error = xstrdup("the expression is empty");
    text_free(&code);
    return start;
}

/* Reads the calls of a turn's text, in any format but python-tokens. The caller frees *c. */
static inline void tool_format_read(const ToolFormat *f, const char *text, size_t n, ToolCalls *c) {
    *c = (ToolCalls){0};
    if (f->kind == TOOL_HERMES) tool_read_hermes(f, text, n, c);
    else if (f->kind == TOOL_LLAMA3) tool_read_llama3(text, n, c);
    else tool_read_tags(f, text, n, c);
}

/* ---- writing calls --------------------------------------------------------------------------------------------- */

/* Appends a call of a tool as a model writes it, in any format but python-tokens. arguments: an object, in a format with
 * tags of one text. */
static inline void tool_format_call(const ToolFormat *f, const char *name, const json_t *arguments, TextBuffer *out) {
    if (f->kind == TOOL_TAGS) {
        json_t *value = json_object_iter_value(json_object_iter((json_t *)arguments));
        text_format(out, "%s%s%s", f->open, json_string_value(value), f->close);
        return;
    }
    json_t *call = json_pack("{s:s,s:O}", "name", name, f->kind == TOOL_LLAMA3 ? "parameters" : "arguments", arguments);
    char *text = json_dumps(call, 0);
    if (f->kind == TOOL_LLAMA3) text_string(out, text);
    else text_format(out, "%s\n%s\n%s", f->open, text, f->close);
    free(text);
    json_decref(call);
}

/* Appends a text between two of the special tokens of python-tokens. */
static inline bool tool_format_marked(const ToolFormat *f, const Tokenizer *t, int first, const char *text,
                                      TokenList *out, Error *e) {
    token_list_append(out, f->mark[first]);
    const bool ok = tokenizer_encode(t, text, strlen(text), TOKENIZER_CONTINUES, out, e);
    token_list_append(out, f->mark[first + 1]);
    return ok;
}

/* Appends the tokens of a call of a tool as a model draws it. arguments: as for tool_format_call(). */
static inline bool tool_format_encode_call(const ToolFormat *f, const Tokenizer *t, const char *name,
                                           const json_t *arguments, TokenList *out, Error *e) {
    if (f->kind == TOOL_PYTHON_TOKENS) {
        json_t *value = json_object_iter_value(json_object_iter((json_t *)arguments));
        return tool_format_marked(f, t, PYTHON_START, json_string_value(value), out, e);
    }
    TextBuffer text = {0};
    tool_format_call(f, name, arguments, &text);
    const bool ok = tokenizer_encode(t, text.text, text.length, TOKENIZER_CONTINUES, out, e);
    text_free(&text);
    return ok;
}

/* ---- writing results ------------------------------------------------------------------------------------------- */

/* The messages of results for a chat template: a new list. result: (n) UTF-8 texts; name: (n) of the tools, read only with a
 * model's own template. */
static inline json_t *tool_format_messages(const ToolFormat *f, const ChatTemplate *c, const char *const *name,
                                           const char *const *result, int n) {
    json_t *list = json_array();
    TextBuffer all = {0};
    const bool own = c->model != NULL;
    for (int i = 0; i < n; i++) {
        if (!own && f->kind == TOOL_HERMES) {
            text_format(&all, "%s<tool_response>\n", i ? "\n" : "");
            text_string(&all, result[i]);
            text_string(&all, "\n</tool_response>");
            continue;
        }
        json_t *message = json_object();
        json_object_set_new(message, "role", json_string(own ? "tool" : "ipython"));
        if (own && *name[i]) json_object_set_new(message, "name", json_string(name[i]));
        json_object_set_new(message, "content", json_string(result[i]));
        json_array_append_new(list, message);
    }
    if (all.length) json_array_append_new(list, json_pack("{s:s,s:s}", "role", "user", "content", all.text));
    text_free(&all);
    return list;
}

/* Appends the tokens of the results of a turn's calls, up to the model's next turn; python-tokens has none for a call that
 * failed (n is 0). invalid: the turn's only call could not be read. */
static inline bool tool_format_answer(const ToolFormat *f, const ChatTemplate *c, const Tokenizer *t,
                                      const char *const *name, const char *const *result, int n, bool invalid,
                                      TokenList *out, Error *e) {
    if (f->kind == TOOL_PYTHON_TOKENS) return !n || tool_format_marked(f, t, OUTPUT_START, result[0], out, e);
    if (f->kind == TOOL_TAGS) {
        TextBuffer text = {0};
        bool ok = true;
        if (invalid && f->invalid) text_string(&text, f->invalid);
        for (int i = 0; i < n && !(invalid && f->invalid); i++) {
            text_string(&text, f->before);
            text_string(&text, result[i]);
            text_string(&text, f->after);
        }
        if (text.length) ok = tokenizer_encode(t, text.text, text.length, TOKENIZER_CONTINUES, out, e);
        text_free(&text);
        return ok;
    }
    json_t *messages = tool_format_messages(f, c, name, result, n);
    const bool ok = chat_encode_answer(c, t, messages, out, e);
    json_decref(messages);
    return ok;
}

#endif
