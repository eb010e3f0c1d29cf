/* tokenizer_write.h - writes a tokenizer as a Hugging Face tokenizer.json and tokenizer_config.json.
 *
 * Any tokenizer can be written, whatever it was opened from: GGUF's arrays (tokenizer_gguf.h), a blob, the byte
 * tokenizer. tokenizer_files.h reads the same tokenizer back, except that ids without a token at the end of the
 * vocabulary are lost; `tokenizers` encodes as this project does with TOKENIZER_SPECIALS. The tokenizer.json of a
 * published model should be copied, not written anew: it may contain fields that have no effect here, such as
 * `truncation`.
 *
 *   part            byte-level BPE                                      SentencePiece-like BPE
 *   normalizer      null, NFC                                           null, Replace, Prepend and Replace
 *   pre_tokenizer   ByteLevel; Digits or Split before it                null, Metaspace
 *   decoder         ByteLevel                                           Replace, ByteFallback, Fuse[, Strip]
 *   post_processor  TemplateProcessing with `bos`, or null
 *
 * Transformers 5 rebuilds a tokenizer by its class, so the class in tokenizer_config.json is PreTrainedTokenizerFast,
 * which takes tokenizer.json as it is. Merges of equal rank are written in their order here.
 *
 * tokenizer_edit_json() and tokenizer_edit_config() add new tokens to the files of a published model, which stay as
 * they are otherwise.
 *
 *     Tokenizer t;
 *     TextBuffer json = {0};
 *     if (!tokenizer_open(&t, "bytes", e)) return false;
 *     if (!tokenizer_to_json(&t, &json, e)) return false;
 */
#ifndef LLMC_TEXT_TOKENIZER_WRITE_H
#define LLMC_TEXT_TOKENIZER_WRITE_H

#include "../base/error.h"   /* error_set, Error, checked_object, xcalloc */
#include "../base/text.h"    /* TextBuffer, text_append, text_string, text_clear, ... */
#include "pretokenize.h"     /* PRETOKENIZER_GPT2, PRETOKENIZER_GPT2_DIGITS */
#include "tokenizer.h"       /* Tokenizer, TOKENIZER_CHARACTERS, TOKEN_APART, TokenizerAdded, ... */
#include "tokenizer_files.h" /* TOKENIZER_SIGN, tokenizer_json_equal, tokenizer_alphabet */

/* ---- tokens as text -------------------------------------------------------------------------------------------- */

/* Sets print[b] to the character that represents byte b in GPT-2's vocabularies. */
static inline void tokenizer_printed(uint16_t print[256]) {
    int16_t byte[512];
    tokenizer_alphabet(byte);
    for (int c = 0; c < 512; c++)
        if (byte[c] >= 0) print[byte[c]] = (uint16_t)c;
}

/* Appends the token as it is written in vocab.json, tokenizer.json and GGUF; nothing for an id without a token. */
static inline void tokenizer_print(const Tokenizer *t, const uint16_t print[256], int32_t id, TextBuffer *out) {
    const TokenizerAdded *added = tokenizer_added_at(t, id);
    size_t n;
    const char *token = tokenizer_token(t, id, &n);
    if (added) text_string(out, added->name);
    else if (t->kind[id] & TOKEN_BYTE) text_format(out, "<0x%02X>", (unsigned char)*token);
    else if (t->kind[id] & TOKEN_APART) text_append(out, token, n);
    else
        for (size_t i = 0; i < n; i++) {
            char utf8[4];
            if (!(t->flags & TOKENIZER_CHARACTERS))
                text_append(out, utf8, (size_t)utf8_encode(print[(unsigned char)token[i]], utf8));
            else if (token[i] == ' ') text_string(out, TOKENIZER_SIGN);
            else text_append(out, token + i, 1);
        }
}

/* Whether `tokenizers`, which numbers added tokens outside the vocabulary itself, numbers them as here. `entries`:
 * tokens in the vocabulary, which contains the special tokens. */
static inline bool tokenizer_numbered(const Tokenizer *t, int32_t entries) {
    int32_t last = -1;
    for (int32_t i = 0; i < t->added_count; i++) {
        const int32_t id = t->added[i].id, next = last >= entries ? last + 1 : entries;
        const bool outside = t->kind[id] & TOKEN_APART && !t->special[id];
        if (outside && id != next) return false;
        last = id > last ? id : last;
    }
    return true;
}

/* ---- tokenizer.json -------------------------------------------------------------------------------------------- */

/* Returns the vocabulary, or NULL. Added tokens that are not special are included only if they must be. */
static inline json_t *tokenizer_json_vocabulary(const Tokenizer *t, Error *e) {
    uint16_t print[256] = {0};
    tokenizer_printed(print);
    int32_t entries = 0;
    for (int32_t id = 0; id < t->vocab; id++)
        entries += t->start[id + 1] > t->start[id] && (t->special[id] || !(t->kind[id] & TOKEN_APART));
    const bool numbered = tokenizer_numbered(t, entries);
    json_t *vocab = json_object();
    TextBuffer token = {0};
    bool ok = true;
    for (int32_t id = 0; id < t->vocab && ok; id++) {
        const bool outside = t->kind[id] & TOKEN_APART && !t->special[id] && tokenizer_added_at(t, id);
        if (t->start[id + 1] == t->start[id] && !t->special[id]) continue;
        text_clear(&token);
        tokenizer_print(t, print, id, &token);
        if (strlen(token.text) != token.length || utf8_valid(token.text, token.length) != token.length)
            ok = error_set(e, "tokenizer: token %d is not UTF-8 without NULs, so tokenizer.json cannot contain it", id);
        else if (outside && numbered) continue;
        else if (json_object_get(vocab, token.text))
            ok = error_set(e, "tokenizer: token %d is '%.60s', as is another, so tokenizer.json cannot contain it", id,
                           token.text);
        else json_object_set_new(vocab, token.text, json_integer(id));
    }
    text_free(&token);
    if (ok) return vocab;
    json_decref(vocab);
    return NULL;
}

static inline json_t *tokenizer_json_merges(const Tokenizer *t) {
    uint16_t print[256] = {0};
    tokenizer_printed(print);
    json_t *merges = json_array();
    TextBuffer pair = {0};
    for (int32_t i = 0; i < t->merge_count; i++) {
        text_clear(&pair);
        tokenizer_print(t, print, t->merges[i].left, &pair);
        text_string(&pair, " ");
        tokenizer_print(t, print, t->merges[i].right, &pair);
        json_array_append_new(merges, json_string(pair.text));
    }
    text_free(&pair);
    return merges;
}

static inline json_t *tokenizer_json_added(const Tokenizer *t) {
    json_t *list = json_array();
    for (int32_t i = 0; i < t->added_count; i++) {
        const TokenizerAdded *a = &t->added[i];
        json_array_append_new(
            list, json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", a->id, "content", a->name, "single_word",
                            a->flags & ADDED_SINGLE_WORD ? 1 : 0, "lstrip", a->flags & ADDED_LSTRIP ? 1 : 0, "rstrip",
                            a->flags & ADDED_RSTRIP ? 1 : 0, "normalized", a->flags & ADDED_NORMALIZED ? 1 : 0,
                            "special", a->flags & ADDED_SPECIAL ? 1 : 0));
    }
    return list;
}

static inline json_t *tokenizer_json_replace(const char *from, const char *to) {
    return json_pack("{s:s,s:{s:s},s:s}", "type", "Replace", "pattern", "String", from, "content", to);
}

static inline json_t *tokenizer_json_new_normalizer(const Tokenizer *t) {
    if (t->flags & TOKENIZER_NFC) return json_pack("{s:s}", "type", "NFC");
    if (!(t->flags & TOKENIZER_REPLACE)) return json_null();
    json_t *replace = tokenizer_json_replace(" ", TOKENIZER_SIGN);
    if (!(t->flags & TOKENIZER_PREPEND)) return replace;
    return json_pack("{s:s,s:[{s:s,s:s},o]}", "type", "Sequence", "normalizers", "type", "Prepend", "prepend",
                     TOKENIZER_SIGN, replace);
}

static inline json_t *tokenizer_json_new_pre_tokenizer(const Tokenizer *t) {
    if (t->flags & TOKENIZER_CHARACTERS) {
        if (t->flags & TOKENIZER_REPLACE && !(t->flags & (TOKENIZER_PREFIX | TOKENIZER_SPLIT))) return json_null();
        return json_pack("{s:s,s:s,s:s,s:b}", "type", "Metaspace", "replacement", TOKENIZER_SIGN, "prepend_scheme",
                         !(t->flags & TOKENIZER_PREFIX)      ? "never"
                         : t->flags & TOKENIZER_PREFIX_FIRST ? "first"
                                                             : "always",
                         "split", t->flags & TOKENIZER_SPLIT ? 1 : 0);
    }
    const bool digits = t->pattern && !strcmp(t->pattern, PRETOKENIZER_GPT2_DIGITS);
    const bool own = digits || (t->pattern && !strcmp(t->pattern, PRETOKENIZER_GPT2)); /* ByteLevel's own pattern */
    json_t *level = json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
                              "use_regex", own ? 1 : 0);
    if (!t->pattern || (own && !digits)) return level;
    json_t *first = digits ? json_pack("{s:s,s:b}", "type", "Digits", "individual_digits", 1)
                           : json_pack("{s:s,s:{s:s},s:s,s:b}", "type", "Split", "pattern", "Regex", t->pattern,
                                       "behavior", "Isolated", "invert", 0);
    return json_pack("{s:s,s:[o,o]}", "type", "Sequence", "pretokenizers", first, level);
}

static inline json_t *tokenizer_json_new_decoder(const Tokenizer *t) {
    if (!(t->flags & TOKENIZER_CHARACTERS))
        return json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
                         "use_regex", 1);
    json_t *list = json_pack("[o,{s:s},{s:s}]", tokenizer_json_replace(TOKENIZER_SIGN, " "), "type", "ByteFallback",
                             "type", "Fuse");
    if (t->flags & TOKENIZER_STRIP)
        json_array_append_new(list,
                              json_pack("{s:s,s:s,s:i,s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    return json_pack("{s:s,s:o}", "type", "Sequence", "decoders", list);
}

/* Returns a named token as JSON, null without one. */
static inline json_t *tokenizer_json_name(const Tokenizer *t, int32_t id) {
    if (id < 0) return json_null();
    uint16_t print[256] = {0};
    TextBuffer token = {0};
    tokenizer_printed(print);
    text_clear(&token);
    tokenizer_print(t, print, id, &token);
    json_t *name = json_stringn(token.text, token.length);
    text_free(&token);
    return name ? name : json_null();
}

/* Returns a part of a template: a SpecialToken or a Sequence. */
static inline json_t *tokenizer_json_piece(const char *kind, const char *id, int type) {
    return json_pack("{s:{s:s,s:i}}", kind, "id", id, "type_id", type);
}

static inline json_t *tokenizer_json_new_processor(const Tokenizer *t) {
    if (!t->add_bos) return json_null();
    json_t *name = tokenizer_json_name(t, t->bos);
    const char *bos = json_string_value(name);
    json_t *special = json_pack("{s:{s:s,s:[i],s:[s]}}", bos, "id", bos, "ids", t->bos, "tokens", bos);
    json_t *single =
        json_pack("[o,o]", tokenizer_json_piece("SpecialToken", bos, 0), tokenizer_json_piece("Sequence", "A", 0));
    json_t *pair = json_pack("[o,o,o]", tokenizer_json_piece("SpecialToken", bos, 0),
                             tokenizer_json_piece("Sequence", "A", 0), tokenizer_json_piece("Sequence", "B", 1));
    json_decref(name);
    return json_pack("{s:s,s:o,s:o,s:o}", "type", "TemplateProcessing", "single", single, "pair", pair,
                     "special_tokens", special);
}

static inline json_t *tokenizer_json_new_model(const Tokenizer *t, Error *e) {
    json_t *vocab = tokenizer_json_vocabulary(t, e);
    if (!vocab) return NULL;
    const bool characters = t->flags & TOKENIZER_CHARACTERS;
    const bool fallback = characters && t->scratch->bpe.fallback_id[0] >= 0;
    return json_pack("{s:s,s:n,s:o,s:n,s:n,s:b,s:b,s:b,s:o,s:o}", "type", "BPE", "dropout", "unk_token",
                     tokenizer_json_name(t, t->unknown), "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                     t->flags & TOKENIZER_FUSE ? 1 : 0, "byte_fallback", fallback ? 1 : 0, "ignore_merges",
                     t->flags & TOKENIZER_WHOLE ? 1 : 0, "vocab", vocab, "merges", tokenizer_json_merges(t));
}

/* Appends JSON with one value per line, and a newline. */
static inline void tokenizer_dump(const json_t *root, TextBuffer *out) {
    char *text = json_dumps(root, JSON_INDENT(2));
    text_string(out, (const char *)checked_object(text, "JSON text"));
    text_string(out, "\n");
    free(text);
}

/* Appends the tokenizer as tokenizer.json. Fails if a token is not UTF-8, which only SentencePiece-like tokenizers from
 * damaged files have. */
static inline bool tokenizer_to_json(const Tokenizer *t, TextBuffer *out, Error *e) {
    json_t *model = tokenizer_json_new_model(t, e);
    if (!model) return false;
    json_t *root = json_pack("{s:s,s:n,s:n,s:o,s:o,s:o,s:o,s:o,s:o}", "version", "1.0", "truncation", "padding",
                             "added_tokens", tokenizer_json_added(t), "normalizer", tokenizer_json_new_normalizer(t),
                             "pre_tokenizer", tokenizer_json_new_pre_tokenizer(t), "post_processor",
                             tokenizer_json_new_processor(t), "decoder", tokenizer_json_new_decoder(t), "model", model);
    if (!root) return error_set(e, "tokenizer: its pattern is not UTF-8, so tokenizer.json cannot contain it");
    tokenizer_dump(root, out);
    json_decref(root);
    return true;
}

/* ---- new tokens in published files ------------------------------------------------------------------------------ */

/* Returns the key of `id` in the vocabulary, or NULL. */
static inline const char *tokenizer_json_key(const json_t *vocab, int32_t id) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)vocab, key, value) {
        if (json_integer_value(value) == id) return key;
    }
    return NULL;
}

/* Sets the content and the flags of an entry. */
static inline void tokenizer_json_set(json_t *entry, const TokenizerAdded *a) {
    json_object_set_new(entry, "content", json_string(a->name));
    json_object_set_new(entry, "single_word", json_boolean(a->flags & ADDED_SINGLE_WORD));
    json_object_set_new(entry, "lstrip", json_boolean(a->flags & ADDED_LSTRIP));
    json_object_set_new(entry, "rstrip", json_boolean(a->flags & ADDED_RSTRIP));
    json_object_set_new(entry, "normalized", json_boolean(a->flags & ADDED_NORMALIZED));
    json_object_set_new(entry, "special", json_boolean(a->flags & ADDED_SPECIAL));
}

/* Adds an entry to added_tokens, which is in ascending order of ids. */
static inline json_t *tokenizer_json_insert(json_t *added, int32_t id) {
    size_t at = json_array_size(added);
    while (at && json_integer_value(json_object_get(json_array_get(added, at - 1), "id")) > id) at--;
    json_t *entry = json_pack("{s:i}", "id", id);
    json_array_insert_new(added, at, entry);
    return entry;
}

/* Gives the token a->id the name of a, in added_tokens and in the vocabulary. entry: that of this id, or NULL. Returns
 * whether something changed. */
static inline bool tokenizer_json_rename(json_t *added, json_t *entry, json_t *vocab, const TokenizerAdded *a) {
    if (entry && tokenizer_json_equal(entry, "content", a->name)) return false;
    const char *key = tokenizer_json_key(vocab, a->id);
    if (!entry && key && !strcmp(key, a->name)) return false; /* a token that another file makes special */
    if (key) {
        json_object_set_new(vocab, a->name, json_integer(a->id));
        json_object_del(vocab, key);
    }
    tokenizer_json_set(entry ? entry : tokenizer_json_insert(added, a->id), a);
    return true;
}

/* Appends a published tokenizer.json with the added tokens of t that it does not have, such as those of
 * tokenizer_add_special(); the same bytes if it has them all. */
static inline bool tokenizer_edit_json(const Tokenizer *t, const char *json, size_t n, TextBuffer *out, Error *e) {
    json_error_t bad;
    json_t *root = json_loadb(json, n, 0, &bad);
    if (!root) return error_set(e, "tokenizer.json: line %d: %s", bad.line, bad.text);
    json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab");
    json_t *added = json_object_get(root, "added_tokens");
    json_t **entry = (json_t **)xcalloc((size_t)t->vocab, sizeof *entry), *one; /* by id */
    size_t k;
    json_array_foreach(added, k, one) {
        const json_int_t id = json_integer_value(json_object_get(one, "id"));
        if (id >= 0 && id < t->vocab) entry[id] = one;
    }
    const bool ok = json_is_object(vocab) && json_is_array(added);
    bool changed = false;
    for (int32_t i = 0; i < t->added_count && ok; i++)
        changed |= tokenizer_json_rename(added, entry[t->added[i].id], vocab, &t->added[i]);
    free(entry);
    if (!ok) error_set(e, "tokenizer.json: has no model.vocab and added_tokens");
    else if (changed) tokenizer_dump(root, out);
    else text_append(out, json, n);
    json_decref(root);
    return ok;
}

/* Appends a published tokenizer_config.json with the added tokens of t that its added_tokens_decoder does not have; the
 * same bytes if it has them all or has no such field. */
static inline bool tokenizer_edit_config(const Tokenizer *t, const char *json, size_t n, TextBuffer *out, Error *e) {
    json_error_t bad;
    json_t *root = json_loadb(json, n, 0, &bad);
    if (!root) return error_set(e, "tokenizer_config.json: line %d: %s", bad.line, bad.text);
    json_t *decoder = json_object_get(root, "added_tokens_decoder");
    bool changed = false;
    const int32_t count = json_is_object(decoder) ? t->added_count : 0;
    for (int32_t i = 0; i < count; i++) {
        char id[16];
        snprintf(id, sizeof id, "%d", t->added[i].id);
        if (tokenizer_json_equal(json_object_get(decoder, id), "content", t->added[i].name)) continue;
        json_t *entry = json_object();
        tokenizer_json_set(entry, &t->added[i]);
        json_object_set_new(decoder, id, entry);
        changed = true;
    }
    if (changed) tokenizer_dump(root, out);
    else text_append(out, json, n);
    json_decref(root);
    return true;
}

/* ---- tokenizer_config.json -------------------------------------------------------------------------------------- */

/* Appends the tokenizer_config.json that belongs to it. */
static inline void tokenizer_to_config(const Tokenizer *t, TextBuffer *out) {
    json_t *root = json_pack("{s:s,s:o,s:o,s:o,s:b,s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "bos_token",
                             tokenizer_json_name(t, t->bos), "eos_token", tokenizer_json_name(t, t->eos), "unk_token",
                             tokenizer_json_name(t, t->unknown), "add_bos_token", t->add_bos ? 1 : 0,
                             "clean_up_tokenization_spaces", 0);
    tokenizer_dump(root, out);
    json_decref(root);
}

#endif
