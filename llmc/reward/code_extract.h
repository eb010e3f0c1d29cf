/* code_extract.h - the program in a completion.
 *
 * Text up to the last `</think>` is ignored, and so is what is outside the last `<answer>`, if there is one. A fenced block
 * is what follows a line that begins with ``` up to the next such line, or to the end of the text. Its language is the first
 * word after the fence; a block of another language than the wanted one is no code. --code-extract takes the last block
 * (open-instruct, LiveCodeBench), the first (nanochat), or all of them, one after the other. Without a block the whole text is
 * the program, unless a fence is required.
 *
 *     TextBuffer code = {0};
 *     const VerifySpan said = verify_span("Here:\n```python\nprint(1)\n```\n");
 *     if (code_extract(said, "python", CODE_LAST, false, &code)) puts(code.text);      // print(1)
 *     text_free(&code);
 */
#ifndef LLMC_REWARD_CODE_EXTRACT_H
#define LLMC_REWARD_CODE_EXTRACT_H

#include "../base/text.h"  /* text_append, text_clear, TextBuffer, text_string */
#include "verify_answer.h" /* VerifySpan, verify_starts, verify_trim, verify_after_last, ... */
#include <strings.h>

#define CODE_EXTRACT_CHOICES "last|first|all"
typedef enum { CODE_LAST, CODE_FIRST, CODE_ALL } CodeExtract;

#define CODE_FENCE_CHOICES "optional|required"

/* Takes a line, without its newline, from the beginning of *rest; false at the end. */
static inline bool code_line(VerifySpan *rest, VerifySpan *line) {
    if (!rest->n) return false;
    const char *end = (const char *)memchr(rest->s, '\n', rest->n);
    line->s = rest->s;
    line->n = end ? (size_t)(end - rest->s) : rest->n;
    const size_t used = line->n + (end != NULL);
    rest->s += used;
    rest->n -= used;
    return true;
}

/* Whether a line is a fence; *tag is the word after it. */
static inline bool code_fence(VerifySpan line, VerifySpan *tag) {
    line = verify_trim(line);
    if (!verify_starts(line, 0, "```")) return false;
    while (line.n && *line.s == '`') {
        line.s++;
        line.n--;
    }
    *tag = verify_trim(line);
    for (size_t i = 0; i < tag->n; i++)
        if (verify_space(tag->s[i]) || tag->s[i] == '{') tag->n = i;
    return true;
}

/* Whether the word after a fence names the language, or nothing. */
static inline bool code_tag(VerifySpan tag, const char *language) {
    static const char *const python[] = {"python", "py", "python3", NULL}, *const c[] = {"c", "C11", NULL};
    const char *const *names = strcmp(language, "c") ? python : c;
    if (!tag.n) return true;
    for (; *names; names++)
        if (strlen(*names) == tag.n && !strncasecmp(*names, tag.s, tag.n)) return true;
    return false;
}

/* Sets `code` to the program; false if the completion has none. fenced: a fence is required. */
static inline bool code_extract(VerifySpan all, const char *language, CodeExtract which, bool fenced,
                                TextBuffer *code) {
    verify_after_last(&all, "</think>");
    if (verify_after_last(&all, "<answer>")) verify_before(&all, "</answer>");
    VerifySpan rest = all, line, tag;
    bool inside = false, wanted = false, any = false;
    text_clear(code);
    while (code_line(&rest, &line)) {
        if (!code_fence(line, &tag)) {
            if (!inside || !wanted) continue;
            text_append(code, line.s, line.n);
            text_string(code, "\n");
            continue;
        }
        if (inside && wanted && which == CODE_FIRST) return verify_trim((VerifySpan){code->text, code->length}).n > 0;
        inside = !inside;
        if (!inside) continue;
        any = true;
        wanted = code_tag(tag, language);
        if (wanted && which == CODE_LAST) text_clear(code);
    }
    if (!any && !fenced) {
        while (all.n && (*all.s == '\n' || *all.s == '\r')) {
            all.s++;
            all.n--;
        }
        text_append(code, all.s, all.n);
    }
    return verify_trim((VerifySpan){code->text, code->length}).n > 0;
}

/* Whether a program defines a function or class of this name at its top level, or assigns to it. */
static inline bool code_defines(const char *code, const char *name) {
    VerifySpan rest = verify_span(code), line;
    const size_t n = strlen(name);
    while (code_line(&rest, &line)) {
        static const char *const words[] = {"def ", "async def ", "class ", ""};
        for (int i = 0; i < 4; i++) {
            const size_t at = strlen(words[i]);
            if (!verify_starts(line, 0, words[i]) || !verify_starts(line, at, name)) continue;
            size_t after = at + n;
            while (after < line.n && line.s[after] == ' ') after++;
            const char next = after < line.n ? line.s[after] : 0;
            if (*words[i] ? next == '(' || next == ':' : next == '=' && !verify_starts(line, after, "==")) return true;
        }
    }
    return false;
}

#endif
