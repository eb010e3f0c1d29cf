/* html.h - escaping of text for HTML.
 *
 * All text that is not part of the program (a model's output, an option's value, a metric's name) reaches a page
 * through html_text(). Its output is safe between tags and inside quoted attributes. Control characters, which HTML
 * cannot display, are written as \x1b, and marks that change the direction of text as \u202e; newline and tab are kept.
 * The text must be valid UTF-8, which history.h ensures.
 *
 *     fputs("<td title='", f);
 *     html_text(f, name);
 *     fputs("'>", f);
 */
#ifndef LLMC_REPORT_HTML_H
#define LLMC_REPORT_HTML_H

#include <stdio.h>
#include <string.h>

/* Writes the first n bytes of text, escaped. */
static inline void html_bytes(FILE *f, const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)text[i];
        switch (c) {
        case '&': fputs("&amp;", f); break;
        case '<': fputs("&lt;", f); break;
        case '>': fputs("&gt;", f); break;
        case '"': fputs("&quot;", f); break;
        case '\'': fputs("&#39;", f); break;
        case '\n':
        case '\t': fputc(c, f); break;
        case 0xC2: /* U+0080 to U+009F are control characters too */
            if (i + 1 < n && (unsigned char)text[i + 1] < 0xA0) fprintf(f, "\\x%02x", (unsigned char)text[++i]);
            else fputc(c, f);
            break;
        case 0xE2: { /* U+202A to U+202E and U+2066 to U+2069 turn the direction of the text that follows */
            const unsigned char middle = i + 2 < n ? (unsigned char)text[i + 1] : 0,
                                last = middle ? (unsigned char)text[i + 2] : 0;
            if ((middle == 0x80 && last >= 0xAA && last <= 0xAE) || (middle == 0x81 && last >= 0xA6 && last <= 0xA9)) {
                fprintf(f, "\\u20%02x", (middle - 0x80) * 0x40 + last - 0x80);
                i += 2;
            } else fputc(c, f);
            break;
        }
        default:
            if (c < 0x20 || c == 0x7F) fprintf(f, "\\x%02x", c);
            else fputc(c, f);
        }
    }
}

static inline void html_text(FILE *f, const char *text) { html_bytes(f, text, strlen(text)); }

/* The number of bytes of text that are shown if at most `most` may be: all of it, or whole characters. */
static inline size_t html_shown(const char *text, size_t most) {
    size_t n = strlen(text);
    if (n > most)
        for (n = most; n && ((unsigned char)text[n] & 0xC0) == 0x80;) n--;
    return n;
}

/* Writes how much of a text is left out of which the first n bytes are shown, if anything is. */
static inline void html_rest(FILE *f, const char *text, size_t n) {
    if (text[n]) fprintf(f, "<span class='none'> \xE2\x80\xA6 and %zu bytes more</span>", strlen(text + n));
}

#endif
