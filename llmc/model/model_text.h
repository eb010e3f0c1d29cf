/* model_text.h - a model's tokenizer and chat template, read from its file, to convert text to tokens and back.
 *
 *     ModelText t;
 *     model_text_open(&t, &file, "sft.bin", &e);       // t.present is false if the file has no tokenizer
 *     char *s = model_text_decode(&t, ids, n, false);  // the caller frees it
 */
#ifndef LLMC_MODEL_MODEL_TEXT_H
#define LLMC_MODEL_MODEL_TEXT_H

#include "../base/error.h"     /* Error, error_set */
#include "../base/text.h"      /* token_list_add, TextBuffer, TokenList, text_append, ... */
#include "../text/chat.h"      /* ChatTemplate, chat_stop_token, chat_template_free, chat_template_parse */
#include "../text/tokenizer.h" /* Tokenizer, tokenizer_decode, tokenizer_free, tokenizer_load */
#include "model_load.h"        /* ModelFile */

typedef struct ModelText {
    bool present, has_template;
    Tokenizer tokenizer;
    ChatTemplate chat;
    int32_t stop;   /* the token that ends an assistant's turn */
    TokenList ends; /* it, those of generation_config.json, and the end of text: all end a completion, in every
                       program */
} ModelText;

static inline void model_text_close(ModelText *t) {
    if (t->present) tokenizer_free(&t->tokenizer);
    if (t->has_template) chat_template_free(&t->chat);
    token_list_free(&t->ends);
    *t = (ModelText){0};
}

/* Reads the tokenizer and the chat template of f. name: file name, for messages. A file with a tokenizer but no chat
 * template gets the template "plain". */
static inline bool model_text_open(ModelText *t, const ModelFile *f, const char *name, Error *e) {
    Error inner;
    *t = (ModelText){.stop = -1};
    if (!f->tokenizer) return true;
    if (!tokenizer_load(&t->tokenizer, f->tokenizer, f->tokenizer_bytes, &inner))
        return error_set(e, "%s: %s", name, inner.text);
    t->present = true;
    if (!chat_template_parse(&t->chat, f->chat_template ? f->chat_template : "plain", &inner)) {
        model_text_close(t);
        return error_set(e, "%s: %s", name, inner.text);
    }
    t->has_template = true;
    t->stop = chat_stop_token(&t->chat, &t->tokenizer);
    token_list_add(&t->ends, t->stop);
    for (int32_t i = 0; i < f->stops.count; i++) token_list_add(&t->ends, f->stops.ids[i]);
    for (int32_t i = 0; t->tokenizer.end_count > 1 && i < t->tokenizer.end_count; i++)
        token_list_add(&t->ends, t->tokenizer.ends[i]);
    token_list_add(&t->ends, t->tokenizer.eos);
    return true;
}

/* Returns the tokens as text, or as a list of ids if there is no tokenizer. The caller frees the result. *length: its
 * bytes, among which there may be NULs; may be NULL. */
static inline char *model_text_decode_bytes(const ModelText *t, const int32_t *ids, int32_t n, bool specials,
                                            size_t *length) {
    TextBuffer out = {0};
    text_append(&out, "", 0);
    if (t->present) tokenizer_decode(&t->tokenizer, ids, n, specials, &out);
    for (int32_t i = 0; !t->present && i < n; i++) text_format(&out, i ? " %d" : "%d", ids[i]);
    if (length) *length = out.length;
    return out.text;
}

/* The same without the length. */
static inline char *model_text_decode(const ModelText *t, const int32_t *ids, int32_t n, bool specials) {
    return model_text_decode_bytes(t, ids, n, specials, NULL);
}

#endif
