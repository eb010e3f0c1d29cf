/* json_scan.h - reads some members of a JSON object without building the others.
 *
 * The text is checked as a whole, by the rules of jansson with JSON_ALLOW_NUL and JSON_REJECT_DUPLICATES, on the condition that
 * it is valid UTF-8. What is rare in rows of data is left to jansson: json_scan() then returns false, as it does for a text
 * that is no object. So it never accepts what jansson rejects, and its members are those of jansson.
 *
 *     const char *text = "{\"prompt\": \"2+3=\", \"right\": true}";
 *     JsonScan s = {0};
 *     json_scan_want(&s, "right", 5);
 *     if (json_scan(&s, text, strlen(text)))
 *         printf("%d\n", json_is_true(json_object_get(s.row, "right")));   // valid until the next call
 *     json_scan_free(&s);
 */
#ifndef LLMC_BASE_JSON_SCAN_H
#define LLMC_BASE_JSON_SCAN_H

#include "error.h" /* xrealloc, xstrndup */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { JSON_SCAN_KEYS = 32, JSON_SCAN_DEPTH = 16, JSON_SCAN_DIGITS = 18 }; /* beyond these jansson reads the text */

typedef struct JsonSpan {
    const char *at;
    size_t n;
} JsonSpan;

/* A member that is wanted. */
typedef struct JsonWanted {
    char *name;
    size_t n;
} JsonWanted;

typedef struct JsonScan {
    JsonWanted *want;
    int count;
    json_t *row; /* the members that were found */
} JsonScan;

static inline void json_scan_free(JsonScan *s) {
    for (int i = 0; i < s->count; i++) free(s->want[i].name);
    free(s->want);
    json_decref(s->row);
    *s = (JsonScan){0};
}

/* Adds a name of n bytes to the members that are wanted. */
static inline void json_scan_want(JsonScan *s, const char *name, size_t n) {
    for (int i = 0; i < s->count; i++)
        if (s->want[i].n == n && !memcmp(s->want[i].name, name, n)) return;
    s->want = (JsonWanted *)xrealloc(s->want, (size_t)s->count + 1, sizeof *s->want);
    s->want[s->count++] = (JsonWanted){.name = xstrndup(name, n), .n = n};
}

/* ---- the text ---------------------------------------------------------------------------------------------------- */

/* Each function takes the place of what it reads and returns the place after it, or NULL. The text ends with a NUL. */

static inline const char *json_scan_blank(const char *s) {
    while (*s == ' ' || *s == '\t' || *s == '\n' || *s == '\r') s++;
    return s;
}

/* Bytes of s[0..end) before a quote, a backslash or a control character, eight at a time. */
static inline const char *json_scan_plain(const char *s, const char *end) {
    const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
    for (; end - s >= 8; s += 8) {
        uint64_t x;
        memcpy(&x, s, 8);
        const uint64_t quote = x ^ (ones * '"'), slash = x ^ (ones * '\\');
        const uint64_t hit = (((x - ones * 0x20) & ~x) | ((quote - ones) & ~quote) | ((slash - ones) & ~slash)) & high;
        if (hit) return s + __builtin_ctzll(hit) / 8;
    }
    while (s < end && (unsigned char)*s >= 0x20 && *s != '"' && *s != '\\') s++;
    return s;
}

/* An escape. A surrogate is left to jansson. */
static inline const char *json_scan_escape(const char *s) {
    if (s[1] != 'u') return s[1] && strchr("\"\\/bfnrt", s[1]) ? s + 2 : NULL;
    for (int i = 2; i < 6; i++)
        if (!s[i] || !strchr("0123456789abcdefABCDEF", s[i])) return NULL;
    return (s[2] | 32) == 'd' && s[3] > '7' ? NULL : s + 6;
}

/* A text in quotes. *escaped: it has escapes. */
static inline const char *json_scan_string(const char *s, const char *end, bool *escaped) {
    *escaped = false;
    for (s++; s; s = json_scan_escape(s)) {
        s = json_scan_plain(s, end);
        if (s >= end || (unsigned char)*s < 0x20) return NULL;
        if (*s == '"') return s + 1;
        *escaped = true;
    }
    return NULL;
}

/* Digits, at least one. */
static inline const char *json_scan_digits(const char *s) {
    const char *first = s;
    while (*s >= '0' && *s <= '9') s++;
    return s > first ? s : NULL;
}

/* A number. *integer: it has no fraction and no exponent. */
static inline const char *json_scan_number(const char *s, bool *integer) {
    s += *s == '-';
    const char *first = s, *whole = json_scan_digits(s);
    if (!whole || (*s == '0' && whole > s + 1)) return NULL;
    s = whole;
    *integer = *s != '.' && (*s | 32) != 'e';
    if (*s == '.' && !(s = json_scan_digits(s + 1))) return NULL;
    if (s - first > JSON_SCAN_DIGITS) return NULL;
    if ((*s | 32) != 'e') return s;
    s += s[1] == '-' || s[1] == '+' ? 2 : 1;
    const char *exponent = json_scan_digits(s);
    return exponent && exponent - s <= 2 ? exponent : NULL;
}

static inline const char *json_scan_word(const char *s, const char *word) {
    const size_t n = strlen(word);
    return strncmp(s, word, n) ? NULL : s + n;
}

/* ---- members ----------------------------------------------------------------------------------------------------- */

/* The value of a text that json_scan_value() accepts; NULL if jansson does not accept it. */
static inline json_t *json_scan_make(const char *s, size_t n) {
    bool other = false; /* escapes, or whether a number is an integer */
    switch (*s) {
    case 't': return json_true();
    case 'f': return json_false();
    case 'n': return json_null();
    case '"':
        json_scan_string(s, s + n, &other);
        if (!other) return json_stringn_nocheck(s + 1, n - 2);
        break;
    case '{':
    case '[': break;
    default:
        json_scan_number(s, &other);
        if (other) return json_integer(strtoll(s, NULL, 10));
    }
    return json_loadb(s, n, JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, NULL);
}

/* Keeps a member if it is wanted. False if jansson does not accept it. */
static inline bool json_scan_member(JsonScan *s, const JsonSpan *key, const char *value, size_t n) {
    for (int i = 0; i < s->count; i++) {
        const JsonWanted *w = &s->want[i];
        if (w->n != key->n || memcmp(w->name, key->at, key->n)) continue;
        json_t *made = json_scan_make(value, n);
        return made && !json_object_set_new_nocheck(s->row, w->name, made);
    }
    return true;
}

/* ---- lists and objects -------------------------------------------------------------------------------------------- */

static inline const char *json_scan_value(const char *s, const char *end, int depth);

/* A list. */
static inline const char *json_scan_list(const char *s, const char *end, int depth) {
    s = json_scan_blank(s + 1);
    if (*s == ']') return s + 1;
    for (;; s++) {
        s = json_scan_value(json_scan_blank(s), end, depth);
        if (!s) return NULL;
        s = json_scan_blank(s);
        if (*s == ']') return s + 1;
        if (*s != ',') return NULL;
    }
}

/* The key of a member and its colon. A key with an escape, and one that the object has already, are left to jansson. */
static inline const char *json_scan_key(const char *s, const char *end, JsonSpan *keys, int *count) {
    bool escaped;
    const char *after = *s == '"' ? json_scan_string(s, end, &escaped) : NULL;
    if (!after || escaped || *count == JSON_SCAN_KEYS) return NULL;
    const JsonSpan key = {s + 1, (size_t)(after - s) - 2};
    for (int i = 0; i < *count; i++)
        if (keys[i].n == key.n && !memcmp(keys[i].at, key.at, key.n)) return NULL;
    keys[(*count)++] = key;
    after = json_scan_blank(after);
    return *after == ':' ? json_scan_blank(after + 1) : NULL;
}

/* An object. keep: keeps the members that it wants; NULL: the object is not the row. */
static inline const char *json_scan_object(const char *s, const char *end, int depth, JsonScan *keep) {
    JsonSpan keys[JSON_SCAN_KEYS];
    int count = 0;
    s = json_scan_blank(s + 1);
    if (*s == '}') return s + 1;
    for (;; s++) {
        const char *value = json_scan_key(json_scan_blank(s), end, keys, &count);
        s = value ? json_scan_value(value, end, depth) : NULL;
        if (!s || (keep && !json_scan_member(keep, &keys[count - 1], value, (size_t)(s - value)))) return NULL;
        s = json_scan_blank(s);
        if (*s == '}') return s + 1;
        if (*s != ',') return NULL;
    }
}

/* Any value. */
static inline const char *json_scan_value(const char *s, const char *end, int depth) {
    bool other;
    switch (*s) {
    case '"': return json_scan_string(s, end, &other);
    case '{': return depth == JSON_SCAN_DEPTH ? NULL : json_scan_object(s, end, depth + 1, NULL);
    case '[': return depth == JSON_SCAN_DEPTH ? NULL : json_scan_list(s, end, depth + 1);
    case 't': return json_scan_word(s, "true");
    case 'f': return json_scan_word(s, "false");
    case 'n': return json_scan_word(s, "null");
    default: return json_scan_number(s, &other);
    }
}

/* Sets s->row to the wanted members of the object text[0..n), which is valid UTF-8 and followed by a NUL. False if jansson has
 * to read it. */
static inline bool json_scan(JsonScan *s, const char *text, size_t n) {
    const char *at = json_scan_blank(text), *const end = text + n;
    if (*at != '{') return false;
    if (s->row) json_object_clear(s->row);
    else s->row = json_object();
    at = json_scan_object(at, end, 1, s);
    return at && json_scan_blank(at) == end;
}

#endif
