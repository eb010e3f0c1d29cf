/* json_text.h - JSON as text, with numbers of as few digits as possible.
 *
 * A double is written with the fewest digits that read back as the same double: 0.1, not 0.10000000000000001 as
 * jansson writes it.
 *
 *     char number[32];
 *     json_number_text(0.1, number);                     // "0.1"; "null" for NaN and infinity
 *     json_t *row = json_pack("{s:f}", "loss", 0.1);
 *     char *line = json_dump_short(row, JSON_COMPACT);   // {"loss":0.1}, like json_dumps(); free() it
 */
#ifndef LLMC_BASE_JSON_TEXT_H
#define LLMC_BASE_JSON_TEXT_H

#include "error.h" /* checked_object */
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

/* Shortens the real numbers of a JSON text in place; they stay real numbers (1.0, not 1). */
static inline void json_shorten(char *text) {
    char *to = text;
    for (const char *at = text; *at;) {
        if (*at == '"') {
            do {
                if (*at == '\\') *to++ = *at++;
                *to++ = *at++;
            } while (*at != '"');
            *to++ = *at++;
            continue;
        }
        const size_t n = strspn(at, "+-.0123456789eE");
        const bool number = n && *at != 'e' && *at != 'E'; /* not the end of true or false */
        if (!number) {
            *to++ = *at++;
            continue;
        }
        char longer[64], shorter[32];
        snprintf(longer, sizeof longer, "%.*s", (int)(n < sizeof longer ? n : sizeof longer - 1), at);
        if (n >= sizeof longer || !strpbrk(longer, ".eE")) { /* an integer */
            memmove(to, at, n);
            to += n;
        } else {
            json_number_text(strtod(longer, NULL), shorter);
            if (!strpbrk(shorter, ".e")) strcat(shorter, ".0");
            const size_t length = strlen(shorter);
            memcpy(to, shorter, length); /* never longer than the digits that it replaces */
            to += length;
        }
        at += n;
    }
    *to = 0;
}

/* json_dumps() with short numbers, to be freed with free(). Running out of memory ends the program. */
static inline char *json_dump_short(const json_t *value, size_t flags) {
    char *text = (char *)checked_object(json_dumps(value, flags | JSON_REAL_PRECISION(17)), "a JSON text");
    json_shorten(text);
    return text;
}

#endif
