/* text_stream.h - text that comes in pieces of bytes, handed on as whole characters.
 *
 * Bytes that may be the beginning of a character stay until the others have come, and so do the last `held` bytes, which
 * may be the beginning of a text that is to be cut off. Bytes that belong to no character become U+FFFD.
 *
 *     TextStream s = {0};
 *     TextBuffer out = {0};
 *     text_string(&s.waiting, "\xC3");
 *     text_stream_take(&s, false, &out);          // nothing yet
 *     text_string(&s.waiting, "\xA9");
 *     text_stream_take(&s, false, &out);          // e with an acute accent
 *     text_stream_take(&s, true, &out);           // the rest, at the end
 *     text_free(&s.waiting), text_free(&out);
 */
#ifndef LLMC_TEXT_TEXT_STREAM_H
#define LLMC_TEXT_TEXT_STREAM_H

#include "../base/text.h" /* TextBuffer, utf8_length, text_append, text_string */
#include <stdbool.h>

typedef struct TextStream {
    bool started;       /* for tokenizer_decode_more(): text has been decoded */
    TextBuffer waiting; /* not handed on yet: the first bytes of a character or, perhaps, of a text that is cut off */
    size_t held;        /* bytes at the end of the text that may be the beginning of such a text */
} TextStream;

/* Whether s[0..n) is the beginning of a character whose remaining bytes may still follow. */
static inline bool text_begins_character(const char *s, size_t n) {
    const unsigned char lead = (unsigned char)s[0];
    const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    char whole[4];
    if (lead < 0xC2 || lead > 0xF4 || n >= length) return false;
    memset(whole, 0x80, sizeof whole);
    memcpy(whole, s, n);
    return n == 1 || utf8_length(whole, length) == (int)length; /* only the second byte's range depends on the first */
}

/* Moves the waiting text to the end of `out`, as UTF-8; with `all`, what may be incomplete at its end as well. */
static inline void text_stream_take(TextStream *t, bool all, TextBuffer *out) {
    const char *s = t->waiting.text;
    const size_t n = t->waiting.length, end = all ? n : n > t->held ? n - t->held : 0;
    size_t i = 0;
    while (i < end) {
        const int length = utf8_length(s + i, n - i);
        if (i + (size_t)length > end) break;
        if (!length && !all && text_begins_character(s + i, n - i)) break;
        if (length) text_append(out, s + i, (size_t)length);
        else text_string(out, "\xEF\xBF\xBD");
        i += length ? (size_t)length : 1;
    }
    if (i) memmove(t->waiting.text, s + i, n - i);
    t->waiting.length = n - i;
}

/* Removes n bytes at the end of the waiting text. */
static inline void text_stream_cut(TextStream *t, size_t n) {
    t->waiting.length -= n < t->waiting.length ? n : t->waiting.length;
}

#endif
