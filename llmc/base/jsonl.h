/* jsonl.h - reader of JSON Lines: one JSON object per line, read through io.h (files, pipes, zstd, gzip) and jansson. A
 * file that begins with [ is one array of objects, of which each is read as a line of its own. With `objects`, a file is a
 * sequence of objects that may each take several lines.
 *
 * Every message names the file, the line and, if applicable, the field:
 *
 *     train.jsonl: line 17: field 'completion': byte 5 is not UTF-8
 *
 * Lines longer than a limit and objects with duplicate keys are rejected. Blank lines and a byte-order mark at the
 * start are skipped. An integer of more than 64 bits becomes a text of its digits. With `skip_bad`, invalid lines are
 * counted in `skipped` instead of stopping the reader, and the message of the first one is kept in `first`. The caller
 * reports lines that it rejects itself through jsonl_skip(). With `scan`, rows may have the members that it wants alone, which
 * is several times as fast; jsonl_whole() then reads the others.
 *
 *     Jsonl j;
 *     json_t *row;                                   // valid until the next call
 *     int more;
 *     if (!jsonl_open(&j, path, skip_bad, e)) return false;
 *     while ((more = jsonl_next(&j, &row, e)) > 0) {
 *         const char *text = jsonl_value_text(&j, json_object_get(row, "text"), "text", e);
 *         if (!text && !jsonl_skip(&j, e)) break;
 *     }
 *     jsonl_close(&j);                               // more < 0: reading failed, see e
 */
#ifndef LLMC_BASE_JSONL_H
#define LLMC_BASE_JSONL_H

#include "error.h"     /* Error, error_set, checked_object, xmalloc */
#include "file_kind.h" /* FILE_KIND_BYTES, FILE_KIND_TEXT, file_kind_text */
#include "io.h"        /* reader_some, Reader, reader_close, reader_open */
#include "json_scan.h" /* JsonScan, json_scan */
#include "text.h"      /* text_append, TextBuffer, text_clear, text_free, ... */
#include <ctype.h>
#include <jansson.h>

enum { JSONL_LINE_MAX = 1 << 26, JSONL_BUFFER = 1 << 16 }; /* bytes */

typedef struct Jsonl {
    Reader in;
    const char *name;
    int64_t line;  /* number of the last line read, or on which the last object of an array begins, from 1 */
    bool begun;    /* `array` is known */
    bool array;    /* the file is one array */
    bool objects;  /* set by the caller: an object may take several lines */
    int64_t lines; /* lines of an array that have been read, minus 1; -1: it has ended */
    size_t limit;  /* maximum bytes of a line; may be set after jsonl_open() */
    bool skip_bad; /* count and skip invalid lines */
    int64_t skipped;
    Error first; /* message of the first skipped line */
    TextBuffer text;
    json_t *row;
    JsonScan *scan; /* set by the caller: the members that rows need; NULL: all */
    bool partial;   /* the row has these alone */
    char *buffer;
    size_t at, end; /* bytes [at, end) of the buffer are not yet consumed */
} Jsonl;

/* ---- messages -------------------------------------------------------------------------------------------------- */

/* Sets the error for the current line (line 0: `name` alone says where) and, unless it is NULL, `field`. Returns false. */
__attribute__((format(printf, 4, 5))) static inline bool jsonl_error(const Jsonl *j, const char *field, Error *e,
                                                                     const char *format, ...) {
    char what[700], line[32] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    if (j->line) snprintf(line, sizeof line, ": line %lld", (long long)j->line);
    if (field) return error_set(e, "%s%s: field '%.80s': %s", j->name, line, field, what);
    return error_set(e, "%s%s: %s", j->name, line, what);
}

/* Counts an invalid line, whose error is in `e`. Returns whether reading may continue. */
static inline bool jsonl_skip(Jsonl *j, const Error *e) {
    if (!j->skip_bad) return false;
    if (!j->skipped++) j->first = *e;
    return true;
}

static inline void jsonl_close(Jsonl *j) {
    json_decref(j->row);
    text_free(&j->text);
    free(j->buffer);
    reader_close(&j->in);
    *j = (Jsonl){.in = {.fd = -1}};
}

/* Fills the buffer if it is empty. False at the end or on failure, which sets *failed. */
static inline bool jsonl_fill(Jsonl *j, bool *failed, Error *e) {
    if (j->at < j->end) return true;
    j->at = 0;
    j->end = reader_some(&j->in, j->buffer, JSONL_BUFFER, failed, e);
    return j->end > 0;
}

/* Opens `path` ("-": standard input) and skips a byte-order mark. */
static inline bool jsonl_open(Jsonl *j, const char *path, bool skip_bad, Error *e) {
    *j = (Jsonl){.in = {.fd = -1}, .limit = JSONL_LINE_MAX, .skip_bad = skip_bad};
    bool failed = false;
    if (!reader_open(&j->in, path, e)) return false;
    j->name = j->in.name;
    j->buffer = (char *)xmalloc(JSONL_BUFFER);
    while (j->end < FILE_KIND_BYTES) {
        const size_t got = reader_some(&j->in, j->buffer + j->end, JSONL_BUFFER - j->end, &failed, e);
        if (!got) break;
        j->end += got;
    }
    if (failed) {
        jsonl_close(j);
        return false;
    }
    if (j->end >= 3 && !memcmp(j->buffer, "\xEF\xBB\xBF", 3)) j->at = 3;
    char text[FILE_KIND_TEXT];
    if (!file_kind_text(j->buffer, j->end, text)) return true;
    error_set(e, "%s: this is %s", j->name, text);
    jsonl_close(j);
    return false;
}

/* Returns the first buffered byte that is not white space, or -1. At the start of a file it distinguishes JSON ('{')
 * from plain text. */
static inline int jsonl_peek(const Jsonl *j) {
    for (size_t i = j->at; i < j->end; i++)
        if (!strchr(" \t\r\n", j->buffer[i]) || !j->buffer[i]) return (unsigned char)j->buffer[i];
    return -1;
}

/* Appends the rest of the file to `out`, unchanged. */
static inline bool jsonl_rest(Jsonl *j, TextBuffer *out, Error *e) {
    bool failed = false;
    for (; jsonl_fill(j, &failed, e); j->at = j->end) text_append(out, j->buffer + j->at, j->end - j->at);
    return !failed;
}

/* ---- lines ----------------------------------------------------------------------------------------------------- */

/* Reads a line into j->text, without its newline. Returns 1, 0 at the end, -1 on failure. A line over the limit is
 * discarded and sets *too_long. */
static inline int jsonl_line(Jsonl *j, bool *too_long, Error *e) {
    bool failed = false, any = false;
    text_clear(&j->text);
    *too_long = false;
    while (jsonl_fill(j, &failed, e)) {
        any = true;
        const char *start = j->buffer + j->at, *newline = (const char *)memchr(start, '\n', j->end - j->at);
        const size_t n = newline ? (size_t)(newline - start) : j->end - j->at;
        if (n > j->limit - j->text.length) *too_long = true;
        if (!*too_long) text_append(&j->text, start, n);
        j->at += n + (newline != NULL);
        if (newline) break;
    }
    j->line += any;
    return failed ? -1 : any;
}

/* Returns the next byte, or -1 at the end and on failure. */
static inline int jsonl_byte(Jsonl *j, bool *failed, Error *e) {
    return jsonl_fill(j, failed, e) ? (unsigned char)j->buffer[j->at++] : -1;
}

/* Returns the next byte of an array that is not white space. */
static inline int jsonl_solid(Jsonl *j, bool *failed, Error *e) {
    for (;;) {
        const int c = jsonl_byte(j, failed, e);
        if (c == '\n') j->lines++;
        else if (c != ' ' && c != '\t' && c != '\r') return c;
    }
}

/* Reads an object of an array into j->text, as jsonl_line() reads a line. */
static inline int jsonl_element(Jsonl *j, bool *too_long, Error *e) {
    bool failed = false, text = false, escaped = false, more = j->line > 0;
    int64_t depth = 0;
    int c = jsonl_solid(j, &failed, e);
    text_clear(&j->text);
    *too_long = false;
    j->line = j->lines + 1;
    if (more && c == ',') c = jsonl_solid(j, &failed, e);
    else if (more && c >= 0 && c != ']')
        return jsonl_error(j, NULL, e, "byte 0x%02X follows an object of the array, expected , or ]", (unsigned)c) - 1;
    else if (c == ']') {
        j->lines = -1;
        while ((c = jsonl_byte(j, &failed, e)) >= 0)
            if (!c || !strchr(" \t\r\n", c)) return jsonl_error(j, NULL, e, "more follows the end of the array") - 1;
        return failed ? -1 : 0;
    }
    j->line = j->lines + 1;
    if (c == ',' || c == ']') return jsonl_error(j, NULL, e, "an object of the array is missing before %c", c) - 1;
    for (; c >= 0; c = jsonl_byte(j, &failed, e)) {
        if (!text && !depth && (c == ',' || c == ']')) {
            j->at--;
            return 1;
        }
        if (j->text.length == j->limit) *too_long = true;
        const char byte = (char)c;
        if (!*too_long) text_append(&j->text, &byte, 1);
        j->lines += c == '\n';
        if (escaped) escaped = false;
        else if (text) {
            escaped = c == '\\';
            text = c != '"';
        } else {
            text = c == '"';
            depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        }
    }
    if (!failed) jsonl_error(j, NULL, e, "the file ends inside its array, which has no ]");
    return -1;
}

/* Reads the next object, up to its closing brace, into j->text, as jsonl_line() reads a line. What is no object ends with its
 * line. */
static inline int jsonl_object(Jsonl *j, bool *too_long, Error *e) {
    bool failed = false, text = false, escaped = false;
    int64_t depth = 0;
    int c = jsonl_solid(j, &failed, e);
    text_clear(&j->text);
    *too_long = false;
    j->line = j->lines + 1;
    for (; c >= 0; c = jsonl_byte(j, &failed, e)) {
        j->lines += c == '\n';
        if (c == '\n' && !depth) break;
        if (j->text.length == j->limit) *too_long = true;
        const char byte = (char)c;
        if (!*too_long) text_append(&j->text, &byte, 1);
        if (escaped) escaped = false;
        else if (text) {
            escaped = c == '\\';
            text = c != '"';
        } else {
            text = depth && c == '"';
            depth += (c == '{' || c == '[') - (c == '}' || c == ']');
            if (depth <= 0 && c == '}') break;
        }
    }
    return failed ? -1 : j->text.length > 0 || *too_long;
}

/* Reads the next line or the next object of the array. */
static inline int jsonl_text(Jsonl *j, bool *too_long, Error *e) {
    if (!j->begun) {
        bool failed = false;
        int c = -1;
        while (jsonl_fill(j, &failed, e) && (c = j->buffer[j->at]) && strchr(" \t\r\n", c)) {
            j->lines += c == '\n';
            j->at++;
        }
        if (failed) return -1;
        j->begun = true;
        j->array = c == '[';
        if (j->array) j->at++;
        else if (!j->objects) {
            j->line = j->lines;
            j->lines = 0;
        }
    }
    if (j->objects && !j->array) return jsonl_object(j, too_long, e);
    return j->array ? j->lines < 0 ? 0 : jsonl_element(j, too_long, e) : jsonl_line(j, too_long, e);
}

/* Returns the top-level field that contains invalid UTF-8, or NULL. Replaces the invalid bytes with DEL, parses the
 * line and searches for DEL. */
static inline const char *jsonl_broken_field(Jsonl *j) {
    char *text = j->text.text;
    for (size_t i = 0; i < j->text.length;) {
        const int length = utf8_length(text + i, j->text.length - i);
        if (text[i] == 127) text[i] = '?';
        if (!length) text[i] = 127;
        i += length ? (size_t)length : 1;
    }
    json_decref(j->row);
    j->row = json_loadb(text, j->text.length, JSON_ALLOW_NUL, NULL);
    const char *key;
    json_t *value;
    json_object_foreach(j->row, key, value) {
        char *dump = json_dumps(value, JSON_ENCODE_ANY);
        const bool here = strchr(key, 127) || (dump && strchr(dump, 127));
        free(dump);
        if (here) return key;
    }
    return NULL;
}

/* Puts integers of j->text that do not fit 64 bits into quotes. */
static inline void jsonl_quote_integers(Jsonl *j) {
    TextBuffer out = {0};
    const char *s = j->text.text, *end = s + j->text.length;
    for (bool text = false; s < end;) {
        const char *from = s;
        if (!text && (isdigit((unsigned char)*s) || (*s == '-' && isdigit((unsigned char)s[1])))) {
            s += *s == '-';
            while (isdigit((unsigned char)*s)) s++;
            const bool real = *s && strchr(".eE", *s);
            while (*s && strchr("0123456789.eE+-", *s)) s++;
            errno = 0;
            if (!real) strtoll(from, NULL, 10);
            const bool quoted = !real && errno == ERANGE;
            text_append(&out, "\"", quoted);
            text_append(&out, from, (size_t)(s - from));
            text_append(&out, "\"", quoted);
            continue;
        }
        if (*s == '"') text = !text;
        s += 1 + (text && *s == '\\' && s + 1 < end);
        text_append(&out, from, (size_t)(s - from));
    }
    text_free(&j->text);
    j->text = out;
}

static inline json_t *jsonl_load(const Jsonl *j, json_error_t *bad) {
    return json_loadb(j->text.text, j->text.length, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, bad);
}

/* Parses the line in j->text into j->row. */
static inline bool jsonl_parse(Jsonl *j, Error *e) {
    json_error_t bad;
    const size_t valid = utf8_valid(j->text.text, j->text.length);
    if (valid < j->text.length) {
        const char *field = jsonl_broken_field(j);
        if (field && strchr(field, 127)) field = NULL;
        return jsonl_error(j, field, e, "byte %zu of the line is not UTF-8", valid + 1);
    }
    json_decref(j->row);
    j->partial = j->scan && !j->array && json_scan(j->scan, j->text.text, j->text.length);
    j->row = j->partial ? json_incref(j->scan->row) : jsonl_load(j, &bad);
    if (!j->row && json_error_code(&bad) == json_error_numeric_overflow) {
        jsonl_quote_integers(j);
        j->row = jsonl_load(j, &bad);
    }
    if (!j->row) {
        if (json_error_code(&bad) == json_error_duplicate_key)
            return jsonl_error(j, NULL, e, "byte %d: %s", bad.position, bad.text);
        const bool open = !j->array && json_error_code(&bad) == json_error_premature_end_of_input;
        return jsonl_error(j, NULL, e, "is not JSON at byte %d: %s%s", bad.position, bad.text,
                           open ? "; each line has to be a whole object, or the file one array of objects" : "");
    }
    if (!json_is_object(j->row))
        return jsonl_error(j, NULL, e, "is not a JSON object; expected {...}%s",
                           j->array ? " in the array" : " on each line");
    return true;
}

/* Returns the current row with all its members, valid until the next call. */
static inline json_t *jsonl_whole(Jsonl *j) {
    if (!j->partial) return j->row;
    json_decref(j->row);
    j->partial = false;
    j->row = (json_t *)checked_object(jsonl_load(j, NULL), "a row");
    return j->row;
}

/* Whether the line in j->text has only white space. */
static inline bool jsonl_blank(const Jsonl *j) {
    return j->text.text[strspn(j->text.text, " \t\r")] == 0 && strlen(j->text.text) == j->text.length;
}

/* Sets the error of a line that is longer than the limit. */
static inline bool jsonl_too_long(const Jsonl *j, Error *e) {
    return jsonl_error(j, NULL, e, "is longer than %zu bytes", j->limit);
}

/* Reads the next object, valid until the next call. Returns 1, 0 at the end, -1 if reading fails or a line is invalid
 * and may not be skipped. */
static inline int jsonl_next(Jsonl *j, json_t **row, Error *e) {
    bool too_long;
    *row = NULL;
    for (int more; (more = jsonl_text(j, &too_long, e)) != 0;) {
        if (more < 0) return -1;
        if (jsonl_blank(j) && !too_long) continue;
        const bool ok = too_long ? jsonl_too_long(j, e) : jsonl_parse(j, e);
        *row = j->row;
        if (ok) return 1;
        if (!jsonl_skip(j, e)) return -1;
    }
    return 0;
}

/* ---- fields ---------------------------------------------------------------------------------------------------- */

static inline const char *jsonl_type(const json_t *value) {
    if (!value) return "absent";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_INTEGER:
    case JSON_REAL: return "a number";
    case JSON_TRUE:
    case JSON_FALSE: return "true or false";
    default: return "null";
    }
}

/* Returns the text of a value of `field`, or NULL if it is not a text or contains a NUL character. */
static inline const char *jsonl_value_text(const Jsonl *j, const json_t *value, const char *field, Error *e) {
    const char *text = json_string_value(value);
    if (!text) jsonl_error(j, field, e, "is %s, expected a string", jsonl_type(value));
    else if (strlen(text) != json_string_length(value)) {
        jsonl_error(j, field, e, "contains the character U+0000, which is not supported");
        text = NULL;
    }
    return text;
}

#endif
