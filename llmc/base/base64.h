/* base64.h - bytes as text: base64 (RFC 4648, section 4), with padding and without line breaks.
 *
 *     TextBuffer b = {0};
 *     size_t n;
 *     base64_encode(&b, "any bytes", 9);
 *     uint8_t *bytes = base64_decode(b.text, b.length, &n);          // NULL: the text is not base64
 */
#ifndef LLMC_BASE_BASE64_H
#define LLMC_BASE_BASE64_H

#include "error.h" /* xmalloc */
#include "text.h"  /* TextBuffer, text_append, text_reserve */

/* Appends the text of n bytes. */
static inline void base64_encode(TextBuffer *b, const void *bytes, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *from = (const uint8_t *)bytes;
    text_reserve(b, n / 3 * 4 + 5);
    for (size_t i = 0; i < n; i += 3) {
        const size_t left = n - i;
        const uint32_t three =
            (uint32_t)from[i] << 16 | (left > 1 ? (uint32_t)from[i + 1] << 8 : 0) | (left > 2 ? from[i + 2] : 0);
        const char four[4] = {digits[three >> 18], digits[three >> 12 & 63], left > 1 ? digits[three >> 6 & 63] : '=',
                              left > 2 ? digits[three & 63] : '='};
        text_append(b, four, 4);
    }
}

/* The value of a digit, or -1. */
static inline int base64_digit(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Returns the bytes of a text of n characters in new memory with a closing NUL, or NULL if it is not base64 as
 * base64_encode() writes it. */
static inline uint8_t *base64_decode(const char *text, size_t n, size_t *bytes) {
    const size_t padding = n && text[n - 1] == '=' ? 1 + (n > 1 && text[n - 2] == '=') : 0;
    if (n % 4) return NULL;
    uint8_t *to = (uint8_t *)xmalloc(n / 4 * 3 + 1);
    uint32_t group = 0;
    bool ok = true;
    *bytes = 0;
    for (size_t i = 0; i < n; i++) {
        const int digit = i < n - padding ? base64_digit(text[i]) : 0;
        ok = ok && digit >= 0;
        group = group << 6 | (uint32_t)(digit & 63);
        if (i % 4 < 3) continue;
        const size_t used = i + 1 == n ? 3 - padding : 3;
        ok = ok && !(group & ((1u << 8 * (3 - used)) - 1)); /* bits that no byte takes are 0 */
        for (size_t k = 0; k < used; k++) to[(*bytes)++] = (uint8_t)(group >> (16 - 8 * k));
        group = 0;
    }
    to[*bytes] = 0;
    if (ok) return to;
    free(to);
    return NULL;
}

#endif
