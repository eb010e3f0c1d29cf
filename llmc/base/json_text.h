/* json_text.h - JSON as text, with numbers of as few digits as possible, and any bytes as a JSON string; the JSON object of
 * a file.
 *
 * A double is written with the fewest digits that read back as the same double: 0.1, not 0.10000000000000001 as
 * jansson writes it.
 *
 *     char number[32];
 *     json_number_text(0.1, number);                     // "0.1"; "null" for NaN and infinity
 *     json_t *value = json_finite(NAN);                  // null, which jansson's json_real() is not
 *     json_t *row = json_pack("{s:f, s:o}", "loss", 0.1, "text", json_utf8("a\xFF", 2));      // "a\uFFFD"
 *     char *line = json_dump_short(row, JSON_COMPACT);   // like json_dumps(), {"loss":0.1,...}; free() it
 *     json_t *object = json_parse_object("{}", 2, JSON_REJECT_DUPLICATES, "config.json", e);
 */
#ifndef LLMC_BASE_JSON_TEXT_H
#define LLMC_BASE_JSON_TEXT_H

#include "error.h"     /* error_set, Error, checked_object */
#include "file_kind.h" /* FILE_KIND_TEXT, file_kind_text */
#include "text.h"      /* TextBuffer, text_append, text_format, text_free, ... */
#include <jansson.h>
#include <math.h>

/* Writes the shortest form of a number, or null if it is not finite; text holds at least 32 bytes. */
static inline void json_number_text(double value, char *text) {
    if (!isfinite(value)) {
        strcpy(text, "null");
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, 32, "%.*g", digits, value);
        if (strtod(text, NULL) == value) return;
    }
}

/* A number, or null if it is not finite. */
static inline json_t *json_finite(double value) { return isfinite(value) ? json_real(value) : json_null(); }

/* Appends a JSON text with its real numbers as short as possible; they stay real numbers (1.0, not 1). */
static inline void json_shorten(const char *text, TextBuffer *out) {
    while (*text) {
        size_t n = strcspn(text, "\"-0123456789");
        const bool number = *text != '"' && !n;
        if (*text == '"') {
            for (n = 1; text[n] != '"'; n++) n += text[n] == '\\';
            n++;
        } else if (number) n = strspn(text, "+-.0123456789eE");
        if (number && strcspn(text, ".eE") < n) {
            char shorter[32];
            json_number_text(strtod(text, NULL), shorter);
            text_format(out, "%s%s", shorter, strpbrk(shorter, ".e") ? "" : ".0");
        } else text_append(out, text, n);
        text += n;
    }
}

/* text[0..n) as a JSON string, with U+FFFD for every byte that belongs to no character. */
static inline json_t *json_utf8(const char *text, size_t n) {
    json_t *string = json_stringn(text, n);
    if (string) return string;
    TextBuffer clean = {0};
    utf8_clean(&clean, text, n);
    string = json_stringn(clean.text, clean.length);
    text_free(&clean);
    return string;
}

/* json_dumps() with short numbers, to be freed with free(). Running out of memory ends the program. */
static inline char *json_dump_short(const json_t *value, size_t flags) {
    char *text = (char *)checked_object(json_dumps(value, flags | JSON_REAL_PRECISION(17)), "a JSON text");
    TextBuffer out = {0};
    json_shorten(text, &out);
    free(text);
    return out.text;
}

/* Parses the n bytes of a file that is a JSON object. flags: those of json_loadb(). name: the file, for messages. Returns
 * NULL with *e set if they are something else. */
static inline json_t *json_parse_object(const char *text, size_t n, size_t flags, const char *name, Error *e) {
    json_error_t bad;
    char kind[FILE_KIND_TEXT];
    json_t *root = json_loadb(text, n, flags, &bad);
    if (json_is_object(root)) return root;
    if (root) error_set(e, "%s: is not a JSON object", name);
    else if (file_kind_text(text, n, kind)) error_set(e, "%s: is not JSON, but %s", name, kind);
    else error_set(e, "%s: line %d, column %d: %s", name, bad.line, bad.column, bad.text);
    json_decref(root);
    return NULL;
}

#endif
