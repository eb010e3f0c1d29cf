/* nfc.h - Unicode normalisation form C (Unicode Standard Annex #15), with the data of utf8proc.
 *
 * Bytes outside well-formed characters are kept, and the text before and after them is normalised separately. Text
 * without a byte of 0xCC or more is in form C. In other text only the surroundings of characters that normalisation may
 * change are processed, so most text of the common scripts is merely copied. The time is linear in the text.
 *
 * The result is that of Hugging Face's tokenizers, which has the data of Unicode 9: marks and compositions that Unicode
 * 10 to 18 added, all in rare scripts, are left as they are. By Unicode's stability policy the result for any other
 * character does not change once it is assigned, so it does not depend on utf8proc's version (2.8 in Debian 12).
 *
 *     TextBuffer out = {0};
 *     Nfc scratch = {0};
 *     if (!nfc_quick(text, n)) nfc_append(&scratch, text, n, &out);
 *     nfc_free(&scratch);
 */
#ifndef LLMC_TEXT_NFC_H
#define LLMC_TEXT_NFC_H

#include "../base/error.h" /* xrealloc */
#include "../base/text.h"  /* text_append, utf8_decode, utf8_length, TextBuffer, ... */
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

/* Whether the character has a combining class, a decomposition or a part in one since Unicode 10 or later. */
static inline bool nfc_later(uint32_t c) {
    // clang-format off
    static const struct {
        uint32_t first, last;
    } later[] = {
        {0x5C8, 0x5C9}, {0x7FD, 0x7FD}, {0x897, 0x89F}, {0x8CA, 0x8D3}, {0x9FE, 0x9FE}, {0xC3C, 0xC3C}, {0xD3B, 0xD3C},
        {0xEBA, 0xEBA}, {0x1715, 0x1715}, {0x1ABF, 0x1AF0}, {0x1DF6, 0x1DFA}, {0xA82C, 0xA82C}, {0x105C9, 0x105C9},
        {0x105D2, 0x105D2}, {0x105DA, 0x105DA}, {0x105E4, 0x105E4}, {0x10D24, 0x10D27}, {0x10D69, 0x10D6D},
        {0x10EAB, 0x10EAC}, {0x10ECB, 0x10ECF}, {0x10EF0, 0x10EFB}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
        {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x11382, 0x11385}, {0x1138B, 0x1138B},
        {0x1138E, 0x1138E}, {0x11390, 0x11391}, {0x113B8, 0x113B8}, {0x113BB, 0x113BB}, {0x113C2, 0x113C2},
        {0x113C5, 0x113C5}, {0x113C7, 0x113C9}, {0x113CE, 0x113D0}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
        {0x11930, 0x11930}, {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
        {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
        {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x1611E, 0x16129}, {0x1612F, 0x1612F},
        {0x16D63, 0x16D63}, {0x16D67, 0x16D6A}, {0x16FF0, 0x16FF1}, {0x1D127, 0x1D128}, {0x1D250, 0x1D252},
        {0x1D25B, 0x1D25C}, {0x1D25F, 0x1D25F}, {0x1D280, 0x1D281}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136},
        {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF}, {0x1E6E3, 0x1E6E3},
        {0x1E6E6, 0x1E6E6}, {0x1E6EE, 0x1E6EF}, {0x1E6F5, 0x1E6F5},
    };
    // clang-format on
    size_t low = 0, high = sizeof later / sizeof *later;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (later[middle].last < c) low = middle + 1;
        else high = middle;
    }
    return low < sizeof later / sizeof *later && later[low].first <= c;
}

/* Returns the length of the character at s if normalisation may change it or its neighbours, or 0. */
static inline int nfc_changing(const char *s, size_t n) {
    const int length = utf8_length(s, n);
    const uint32_t c = length ? utf8_decode(s, length) : 0;
    return length && !nfc_plain(c) && !nfc_later(c) ? length : 0;
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
        size_t end = i;
        for (int length; (length = nfc_changing(text + end, n - end));) end += (size_t)length;
        if (end == i) {
            const int length = utf8_length(text + i, n - i);
            const bool known = length && nfc_plain(utf8_decode(text + i, length));
            end += length ? (size_t)length : 1;
            plain = known ? i : end; /* nothing is combined with an ill-formed byte or an unknown character */
            i = end;
            continue;
        }
        text_append(out, text + done, plain - done);
        nfc_segment(s, text + plain, end - plain, out);
        done = plain = i = end;
    }
    text_append(out, text + done, n - done);
}

#endif
