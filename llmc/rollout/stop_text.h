/* stop_text.h - texts that end a completion (--stop), wherever the borders of its tokens are.
 *
 * A completion ends with the token in which the first stop text ends. Its tokens are kept as they were sampled; its text
 * ends before the stop text, as in vLLM. A special token of that name is a stop token instead (rollout.h).
 *
 *     ModelText t;
 *     model_text_open(&t, &file, "sft.bin", &e);
 *     const StopTexts s = {.tokenizer = &t.tokenizer, .text = {"User:"}, .count = 1};
 *     const bool over = stop_text_cut(&s, ids, n) > 0;                 // after each token
 *     char *said = stop_text_decode(&s, &t, ids, n, NULL);             // the caller frees it
 */
#ifndef LLMC_ROLLOUT_STOP_TEXT_H
#define LLMC_ROLLOUT_STOP_TEXT_H

#include "../base/text.h"        /* TextBuffer, text_free */
#include "../model/model_text.h" /* ModelText, model_text_decode_bytes */
#include "../text/tokenizer.h"   /* tokenizer_decode_more, Tokenizer */

enum { STOP_TEXTS_MAX = 16 };

typedef struct StopTexts {
    const Tokenizer *tokenizer;
    const char *text[STOP_TEXTS_MAX]; /* (count), none empty; owned by the caller */
    int count;
} StopTexts;

/* Bytes of the longest stop text. */
static inline size_t stop_text_longest(const StopTexts *s) {
    size_t longest = 0;
    for (int i = 0; i < s->count; i++)
        if (strlen(s->text[i]) > longest) longest = strlen(s->text[i]);
    return longest;
}

/* Finds the stop text in text[0..n) that ends first, but after byte `known`. Returns the bytes from its beginning to the
 * end of the text, or 0 if there is none. *found: the stop text, unless there is none. */
static inline size_t stop_text_find(const StopTexts *s, const char *text, size_t n, size_t known, const char **found) {
    size_t cut = 0, first = SIZE_MAX;
    for (int i = 0; i < s->count; i++) {
        const size_t length = strlen(s->text[i]), from = known + 1 > length ? known + 1 - length : 0;
        const char *at = from < n ? (const char *)memmem(text + from, n - from, s->text[i], length) : NULL;
        if (!at || (size_t)(at - text) + length > first) continue;
        if ((size_t)(at - text) + length == first && n - (size_t)(at - text) <= cut) continue;
        first = (size_t)(at - text) + length;
        cut = n - (size_t)(at - text);
        *found = s->text[i];
    }
    return cut;
}

/* stop_text_cut(). *found: the stop text, unless there is none. */
static inline size_t stop_text_match(const StopTexts *s, const int32_t *tokens, int32_t n, const char **found) {
    TextBuffer tail = {0};
    if (!s->count || !n) return 0;
    const int32_t most = (int32_t)stop_text_longest(s) + 1, first = n > most ? n - most : 0;
    bool started = first > 0;
    tokenizer_decode_more(s->tokenizer, tokens + first, n - 1 - first, false, &started, &tail);
    const size_t known = tail.length;
    tokenizer_decode_more(s->tokenizer, tokens + n - 1, 1, false, &started, &tail);
    const size_t cut = tail.length ? stop_text_find(s, tail.text, tail.length, known, found) : 0;
    text_free(&tail);
    return cut;
}

/* Whether a stop text ends in the last of n tokens: the bytes from its beginning to the end of the completion's text, or
 * 0. */
static inline size_t stop_text_cut(const StopTexts *s, const int32_t *tokens, int32_t n) {
    const char *unused;
    return stop_text_match(s, tokens, n, &unused);
}

/* The text of a completion: model_text_decode() up to the stop text in its last token. The caller frees it. *length: its
 * bytes, among which there may be NULs; may be NULL. */
static inline char *stop_text_decode(const StopTexts *s, const ModelText *t, const int32_t *tokens, int32_t n,
                                     size_t *length) {
    size_t bytes;
    char *text = model_text_decode_bytes(t, tokens, n, false, &bytes);
    const size_t cut = stop_text_cut(s, tokens, n);
    if (cut <= bytes) bytes -= cut;
    text[bytes] = 0;
    if (length) *length = bytes;
    return text;
}

#endif
