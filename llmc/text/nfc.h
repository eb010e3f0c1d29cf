/* nfc.h - Unicode normalisation form C (Unicode Standard Annex #15), with the data of utf8proc.
 *
 * Bytes outside well-formed characters are kept, and the text before and after them is normalised separately. Text
 * without a byte of 0xCC or more is in form C. In other text only the surroundings of characters that normalisation may
 * change are processed, so most text of the common scripts is merely copied. The time is linear in the text.
 *
 * Debian 12's utf8proc 2.8 has the data of Unicode 15. By Unicode's stability policy the result for a character does not
 * change once it is assigned.
 *
 *     TextBuffer out = {0};
 *     Nfc scratch = {0};
 *     if (!nfc_quick(text, n)) nfc_append(&scratch, text, n, &out);
 *     nfc_free(&scratch);
 */
#ifndef LLMC_TEXT_NFC_H
#define LLMC_TEXT_NFC_H

#include "../base/error.h" /* xrealloc */
#include "../base/text.h"  /* TextBuffer, text_append, utf8_decode, utf8_encode, utf8_length */
#include <utf8proc.h>

enum { NFC_EXPANSION = 8 }; /* more than the characters of any canonical decomposition (4) */

typedef struct Nfc {
    int32_t *points, *sorted;
    size_t capacity;
} Nfc;

static inline void nfc_free(Nfc *s) {
    free(s->points);
    free(s->sorted);
    *s = (Nfc){0};
}

/* Whether the text is in form C because it has no byte of 0xCC or more, the first of U+0300. False decides nothing. */
static inline bool nfc_quick(const char *text, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t eight;
        memcpy(&eight, text + i, 8);
        /* the top bit of each byte in which bits 7 and 6 are set; below 0xCC only if bits 5 to 2 are less than 0011 */
        const uint64_t leads = eight & eight << 1 & 0x8080808080808080u;
        if (leads && (leads & (eight << 2 | eight << 3 | (eight << 4 & eight << 5)))) return false;
    }
    for (; i < n; i++)
        if ((unsigned char)text[i] >= 0xCC) return false;
    return true;
}

/* Whether normalisation leaves this character as it is after any text, so that text can be divided before it. Only
 * ranges in which this holds for all characters are listed. */
static inline bool nfc_plain(uint32_t c) {
    if (c < 0x300) return true;
    if (c < 0x2010) return (c >= 0x400 && c < 0x483) || (c >= 0x5D0 && c < 0x5EB) || (c >= 0x620 && c < 0x64B);
    if (c < 0x3041)
        return c < 0x20D0 || (c >= 0x2130 && c < 0x2329) || (c >= 0x2330 && c < 0x2ADC) || c - 0x3000 < 0x2A;
    if (c < 0xAC00) return c < 0x3099 || (c >= 0x309D && c < 0xA000);
    return c < 0xD7A4 || (c >= 0xFF01 && c < 0xFFF0) || (c >= 0x1F000 && c < 0x1FB00);
}

/* Sorts each run of characters with a combining class by the class, stably. */
static inline void nfc_order(Nfc *s, size_t n) {
    for (size_t at = 0, end; at < n; at = end) {
        size_t from[256] = {0}, total = 0;
        for (end = at; end < n; end++) {
            const int class = utf8proc_get_property(s->points[end])->combining_class;
            if (!class) break;
            from[class & 255]++;
        }
        if (end - at > 1) {
            for (int i = 0; i < 256; i++) {
                const size_t count = from[i];
                from[i] = total;
                total += count;
            }
            for (size_t i = at; i < end; i++)
                s->sorted[from[utf8proc_get_property(s->points[i])->combining_class & 255]++] = s->points[i];
            memcpy(s->points + at, s->sorted, (end - at) * sizeof *s->points);
        }
        while (end < n && !utf8proc_get_property(s->points[end])->combining_class) end++;
    }
}

/* Appends the normal form of well-formed text. */
static inline void nfc_segment(Nfc *s, const char *text, size_t n, TextBuffer *out) {
    if (NFC_EXPANSION * n > s->capacity) {
        s->capacity = 2 * NFC_EXPANSION * n;
        s->points = (int32_t *)xrealloc(s->points, s->capacity, sizeof *s->points);
        s->sorted = (int32_t *)xrealloc(s->sorted, s->capacity, sizeof *s->sorted);
    }
    size_t count = 0;
    for (size_t i = 0; i < n;) {
        const int length = utf8_length(text + i, n - i);
        int boundary = 0;
        count += (size_t)utf8proc_decompose_char((int32_t)utf8_decode(text + i, length), s->points + count,
                                                 NFC_EXPANSION, UTF8PROC_DECOMPOSE, &boundary);
        i += (size_t)length;
    }
    nfc_order(s, count);
    const ptrdiff_t left = utf8proc_normalize_utf32(s->points, (ptrdiff_t)count, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (ptrdiff_t i = 0; i < left; i++) {
        char utf8[4];
        text_append(out, utf8, (size_t)utf8_encode((uint32_t)s->points[i], utf8));
    }
}

/* Appends the normal form of text[0..n), which may be any bytes. */
static inline void nfc_append(Nfc *s, const char *text, size_t n, TextBuffer *out) {
    size_t done = 0, plain = 0, i = 0; /* text[0..done) is appended, and text[plain..i) is the last plain character */
    while (i < n) {
        if ((unsigned char)text[i] < 0x80) {
            plain = i++;
            continue;
        }
        int length = utf8_length(text + i, n - i);
        if (!length || nfc_plain(utf8_decode(text + i, length))) {
            plain = length ? i : i + 1; /* nothing is combined with an ill-formed byte */
            i += length ? (size_t)length : 1;
            continue;
        }
        size_t end = i;
        while (end < n && (length = utf8_length(text + end, n - end)) && !nfc_plain(utf8_decode(text + end, length)))
            end += (size_t)length;
        text_append(out, text + done, plain - done);
        nfc_segment(s, text + plain, end - plain, out);
        done = plain = i = end;
    }
    text_append(out, text + done, n - done);
}

#endif
