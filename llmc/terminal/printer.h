/* printer.h - sampled text on standard output, character by character.
 *
 * A character is printed once all its bytes have been sampled; bytes that belong to no character become U+FFFD. On a
 * terminal, control characters are shown as \x1b and the like.
 *
 *     Printer p = printer_open(&tokenizer);
 *     if (!printer_tokens(&p, ids, n, false, &e) || !printer_end(&p, &e)) die("%s", e.text);    // the text and a newline
 */
#ifndef LLMC_TERMINAL_PRINTER_H
#define LLMC_TERMINAL_PRINTER_H

#include "../base/error.h"       /* Error, error_set */
#include "../base/text.h"        /* text_free, TextBuffer, text_string, utf8_decode, ... */
#include "../text/text_stream.h" /* TextStream, text_stream_take */
#include "../text/tokenizer.h"   /* Tokenizer, tokenizer_decode_more */
#include <stdio.h>
#include <unistd.h>

typedef struct Printer {
    const Tokenizer *tokenizer;
    TextStream text;
    bool terminal; /* escape control characters */
} Printer;

static inline Printer printer_open(const Tokenizer *t) {
    return (Printer){.tokenizer = t, .terminal = isatty(STDOUT_FILENO)};
}

static inline void printer_character(const Printer *p, const char *s, int length) {
    const uint32_t c = utf8_decode(s, length);
    if (p->terminal && ((c < 32 && c != '\n' && c != '\t') || (c >= 127 && c < 160))) printf("\\x%02x", c);
    else fwrite(s, 1, (size_t)length, stdout);
}

/* Prints the waiting text; with `all`, an incomplete character at its end as well. */
static inline bool printer_flush(Printer *p, bool all, Error *e) {
    TextBuffer ready = {0};
    text_stream_take(&p->text, all, &ready);
    for (size_t i = 0; i < ready.length;) {
        const int length = utf8_length(ready.text + i, ready.length - i);
        printer_character(p, ready.text + i, length);
        i += (size_t)length;
    }
    text_free(&ready);
    return (!fflush(stdout) && !ferror(stdout)) || error_set(e, "standard output: cannot write: %s", strerror(errno));
}

/* Prints tokens. specials: the names of special tokens, too. */
static inline bool printer_tokens(Printer *p, const int32_t *ids, int32_t n, bool specials, Error *e) {
    tokenizer_decode_more(p->tokenizer, ids, n, specials, &p->text.started, &p->text.waiting);
    return printer_flush(p, false, e);
}

/* Prints the rest and a newline, and frees what the printer holds. */
static inline bool printer_end(Printer *p, Error *e) {
    text_string(&p->text.waiting, "\n");
    const bool ok = printer_flush(p, true, e);
    text_free(&p->text.waiting);
    return ok;
}

#endif
