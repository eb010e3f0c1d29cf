/* text.h - growable text and token lists, and UTF-8.
 *
 * A TextBuffer holds `length` bytes followed by a NUL; the text itself may contain NULs. A TokenList holds token ids.
 * Both start as {0} and grow as they are appended to. Running out of memory ends the program.
 *
 *     TextBuffer b = {0};
 *     text_format(&b, "%d of %d", rank, ranks);
 *     text_free(&b);
 *
 * UTF-8 is strict (RFC 3629): no overlong forms, no surrogates, nothing above U+10FFFF.
 */
#ifndef LLMC_BASE_TEXT_H
#define LLMC_BASE_TEXT_H

#include "error.h" /* xrealloc, die, PRINTF_LIKE */

typedef struct TextBuffer {
    char *text;
    size_t length, capacity;
} TextBuffer;

/* A text inside memory that belongs to something else. No NUL follows it. */
typedef struct TextSlice {
    const char *text;
    size_t length;
} TextSlice;

typedef struct TokenList {
    int32_t *ids;
    int32_t count, capacity;
} TokenList;

/* ---- text ------------------------------------------------------------------------------------------------------ */

/* Makes room for n more bytes and the terminating NUL. */
static inline void text_reserve(TextBuffer *b, size_t n) {
    if (n >= SIZE_MAX / 4 - b->length) die("out of memory: cannot extend a text by %zu bytes", n);
    if (b->length + n < b->capacity) return;
    b->capacity = 2 * b->capacity > b->length + n + 1 ? 2 * b->capacity : b->length + n + 64;
    b->text = (char *)xrealloc(b->text, b->capacity, 1);
}

static inline void text_append(TextBuffer *b, const char *bytes, size_t n) {
    text_reserve(b, n);
    if (n) memcpy(b->text + b->length, bytes, n);
    b->length += n;
    b->text[b->length] = 0;
}

static inline void text_string(TextBuffer *b, const char *s) { text_append(b, s, strlen(s)); }

PRINTF_LIKE(2, 3) static inline void text_format(TextBuffer *b, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0) return;
    text_reserve(b, (size_t)n);
    va_start(args, format);
    vsnprintf(b->text + b->length, (size_t)n + 1, format, args);
    va_end(args);
    b->length += (size_t)n;
}

/* Empties the buffer but keeps its memory. Afterwards `text` is "", never NULL. */
static inline void text_clear(TextBuffer *b) {
    b->length = 0;
    text_append(b, "", 0);
}

static inline void text_free(TextBuffer *b) {
    free(b->text);
    *b = (TextBuffer){0};
}

/* ---- tokens ---------------------------------------------------------------------------------------------------- */

/* Makes room for n more ids. */
static inline void token_list_reserve(TokenList *l, size_t n) {
    if (n > (size_t)(INT32_MAX / 2 - l->count)) die("out of memory: a list cannot hold more than 2^30 tokens");
    if (l->count + (int32_t)n <= l->capacity) return;
    l->capacity = 2 * l->capacity > l->count + (int32_t)n ? 2 * l->capacity : l->count + (int32_t)n + 16;
    l->ids = (int32_t *)xrealloc(l->ids, (size_t)l->capacity, sizeof *l->ids);
}

static inline void token_list_append(TokenList *l, int32_t id) {
    token_list_reserve(l, 1);
    l->ids[l->count++] = id;
}

/* Appends n ids. */
static inline void token_list_extend(TokenList *l, const int32_t *ids, int32_t n) {
    token_list_reserve(l, (size_t)n);
    if (n) memcpy(l->ids + l->count, ids, (size_t)n * sizeof *ids);
    l->count += n;
}

static inline void token_list_free(TokenList *l) {
    free(l->ids);
    *l = (TokenList){0};
}

/* Appends an id unless the list has it; -1 is no id. */
static inline void token_list_add(TokenList *l, int32_t id) {
    for (int32_t i = 0; i < l->count; i++)
        if (l->ids[i] == id) return;
    if (id >= 0) token_list_append(l, id);
}

/* ---- UTF-8 ----------------------------------------------------------------------------------------------------- */

/* Returns the length of the character at s, which has n bytes: 1 to 4, or 0 if no well-formed character begins there.
 * See table 3-7 of the Unicode standard. */
static inline int utf8_length(const char *s, size_t n) {
    const unsigned char *u = (const unsigned char *)s;
    if (!n) return 0;
    if (u[0] < 0x80) return 1;
    if (u[0] < 0xC2 || u[0] > 0xF4) return 0;
    const int length = u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : 4;
    if (n < (size_t)length) return 0;
    const unsigned char low = u[0] == 0xE0 ? 0xA0 : u[0] == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = u[0] == 0xED ? 0x9F : u[0] == 0xF4 ? 0x8F : 0xBF;
    if (u[1] < low || u[1] > high) return 0;
    for (int i = 2; i < length; i++)
        if ((u[i] & 0xC0) != 0x80) return 0;
    return length;
}

/* Returns the length in bytes of the longest well-formed prefix of s[0..n). */
static inline size_t utf8_valid(const char *s, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint64_t eight = ~(uint64_t)0;
        if (n - i >= 8) memcpy(&eight, s + i, 8);
        if (!(eight & 0x8080808080808080u)) { /* eight ASCII characters */
            i += 8;
            continue;
        }
        const int length = utf8_length(s + i, n - i);
        if (!length) break;
        i += (size_t)length;
    }
    return i;
}

/* Appends s[0..n), with U+FFFD for every byte that belongs to no character. */
static inline void utf8_clean(TextBuffer *out, const char *s, size_t n) {
    for (size_t i = 0; i < n;) {
        const size_t valid = utf8_valid(s + i, n - i);
        text_append(out, s + i, valid);
        i += valid;
        if (i < n) {
            text_string(out, "\xEF\xBF\xBD");
            i++;
        }
    }
}

/* Returns a copy of text with U+FFFD for every byte that belongs to no character; NULL for NULL. */
static inline char *utf8_copy(const char *text) {
    TextBuffer copy = {0};
    if (!text) return NULL;
    text_clear(&copy);
    utf8_clean(&copy, text, strlen(text));
    return (char *)xrealloc(copy.text, copy.length + 1, 1);
}

/* Writes code point c, which must not be a surrogate or above U+10FFFF, to s[4]. Returns the number of bytes. */
static inline int utf8_encode(uint32_t c, char s[4]) {
    if (c < 0x80) {
        s[0] = (char)c;
        return 1;
    }
    const int length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, c >>= 6) s[i] = (char)(0x80 | (c & 0x3F));
    s[0] = (char)((length == 2 ? 0xC0 : length == 3 ? 0xE0 : 0xF0) | c);
    return length;
}

/* Returns the code point of the well-formed character of `length` bytes at s. */
static inline uint32_t utf8_decode(const char *s, int length) {
    const unsigned char *u = (const unsigned char *)s;
    uint32_t c = length == 1 ? u[0] : u[0] & (0x3Fu >> (length - 1));
    for (int i = 1; i < length; i++) c = c << 6 | (u[i] & 0x3Fu);
    return c;
}

/* Appends text as it can be printed: control characters, marks that turn the direction of the text, and invalid UTF-8 as
 * escapes such as \x1b and \u202e. newlines: newlines and tabs are appended as they are, else as \n and \t. */
static inline void text_visible(TextBuffer *out, const char *text, size_t n, bool newlines) {
    for (size_t i = 0; i < n;) {
        const int length = utf8_length(text + i, n - i);
        const uint32_t c = length ? utf8_decode(text + i, length) : 0;
        const bool turns = (c >= 0x202A && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
        if (!length) text_format(out, "\\x%02x", (unsigned char)text[i]);
        else if (c == '\n') text_string(out, newlines ? "\n" : "\\n");
        else if (c == '\t') text_string(out, newlines ? "\t" : "\\t");
        else if (c < 32 || (c >= 127 && c < 160)) text_format(out, "\\x%02x", c);
        else if (turns) text_format(out, "\\u%04x", c);
        else text_append(out, text + i, (size_t)length);
        i += length ? (size_t)length : 1;
    }
}

#endif
