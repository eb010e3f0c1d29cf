/* tokenizer_files.h - readers of published vocabularies: tokenizer.json, vocab.json + merges.txt, and a model's folder.
 *
 * vocab.json (OpenAI: encoder.json) maps tokens to ids. merges.txt (vocab.bpe) has one merge per line, lowest rank
 * first, after a line `#version`. Both write bytes as printable characters: "Ġ" is a space (GPT-2's bytes_to_unicode).
 * An entry <...> that is not a byte and not the result of a merge is a special token.
 *
 * tokenizer.json (Hugging Face tokenizers) contains the same tables and how text is processed:
 *
 *   part            byte-level BPE                                      SentencePiece-like BPE
 *   model           BPE, ignore_merges                                  BPE, byte_fallback, fuse_unk, unk_token
 *   normalizer      none, NFC                                           none, Prepend "▁", Replace " " by "▁"
 *   pre_tokenizer   ByteLevel; Digits (individual) + ByteLevel;         none (with Replace), Metaspace "▁",
 *                   Split (a regular expression) + ByteLevel            Split by " " (with Replace: no effect)
 *   decoder         none, ByteLevel                                     Replace, ByteFallback, Fuse, Strip; Metaspace
 *   post_processor  none, ByteLevel, TemplateProcessing with at most one token before the text: bos
 *   added_tokens    special, normalized, lstrip, rstrip, single_word
 *
 * ByteLevel without its pattern and without a Split does not divide the text. Anything else is refused with a message
 * of its own: other models and parts, dropout, subword prefixes and suffixes, and add_prefix_space. Ignored are
 * `truncation` and `padding`, the settings of batches; tokens that a post-processor puts after a text; trim_offsets;
 * and merges whose result is a special token, so that no text becomes one. A Metaspace decoder here omits only one
 * space.
 *
 * A folder contains tokenizer.json, or vocab.json and merges.txt (encoder.json and vocab.bpe) of a GPT-2 tokenizer. It
 * may contain files that name the tokens with a meaning; what no file names is derived from tokenizer.json alone:
 *
 *   eos        eos_token of tokenizer_config.json, else of special_tokens_map.json; else the first eos_token_id
 *   bos        bos_token of these files, else the post-processor's
 *   add_bos    add_bos_token of tokenizer_config.json, else whether there is a post-processor's token
 *   ends       eos_token_id of generation_config.json (a number or a list), that of config.json, and eos
 *
 * These tokens, unk_token and pad_token are special, as in transformers. Without any of them the end of text is
 * <|endoftext|>, else <|end_of_text|>, </s> or <eos>. If the vocabulary has none of these, <|endoftext|> is added.
 * added_tokens_decoder of tokenizer_config.json adds to the added tokens and changes their flags. Ignored
 * are that file's other fields (also additional_special_tokens, since the flags of the added tokens decide),
 * added_tokens.json and tokenizer.model.
 */
#ifndef LLMC_TEXT_TOKENIZER_FILES_H
#define LLMC_TEXT_TOKENIZER_FILES_H

#include "../base/error.h"     /* error_set, Error, xcalloc, xstrdup, ... */
#include "../base/io.h"        /* file_exists, file_slurp, Reader, reader_close, ... */
#include "../base/json_text.h" /* json_parse_object */
#include "../base/text.h"      /* TextBuffer, TokenList, text_append, text_format, ... */
#include "bpe.h"               /* Merge */
#include "pretokenize.h"       /* PRETOKENIZER_GPT2, PRETOKENIZER_GPT2_DIGITS */
#include "tokenizer.h"         /* Tokenizer, TOKENIZER_CHARACTERS, ADDED_SPECIAL, TOKENIZER_NAME_MAX, ... */
#include <jansson.h>

enum { TOKENIZER_FILE_MAX = 1 << 28 }; /* maximum bytes of a file */

/* ---- byte alphabet --------------------------------------------------------------------------------------------- */

/* Sets byte[c] to the byte that character c < 512 represents, or -1. As in GPT-2's encoder.py, printable Latin-1
 * characters represent themselves, and U+0100 onwards represent the other bytes in order. */
static inline void tokenizer_alphabet(int16_t byte[512]) {
    int next = 256;
    memset(byte, 0xFF, 512 * sizeof *byte);
    for (int b = 0; b < 256; b++) {
        const bool prints = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        byte[prints ? b : next++] = (int16_t)b;
    }
}

/* Appends the bytes that `token` represents. Returns false and sets *strange if a character represents no byte. */
static inline bool tokenizer_unprint(const int16_t byte[512], const char *token, TextBuffer *out, uint32_t *strange) {
    for (size_t n = strlen(token); n;) {
        const int length = utf8_length(token, n);
        const uint32_t c = length ? utf8_decode(token, length) : 0xFFFD;
        if (c >= 512 || byte[c] < 0) {
            *strange = c;
            return false;
        }
        text_append(out, (const char[]){(char)byte[c]}, 1);
        token += length;
        n -= (size_t)length;
    }
    return true;
}

/* ---- the vocabulary -------------------------------------------------------------------------------------------- */

typedef struct TokenizerSource {
    const char *file;   /* for messages */
    json_t *vocab;      /* token -> id */
    const char **token; /* (count) by id, as written; NULL: no such id */
    uint8_t *added;     /* (count) flags of an added token + 1; 0: not an added token */
    int32_t count;
    uint32_t flags; /* TOKENIZER_WHOLE ... */
    bool bytes;     /* model.byte_fallback */
} TokenizerSource;

enum { ADDED_IN_VOCABULARY = 64 }; /* in TokenizerSource.added: the token is an ordinary one, too */

static inline json_t *tokenizer_json(const char *path, Error *e) {
    size_t n;
    char *text = file_slurp(path, TOKENIZER_FILE_MAX, &n, e);
    json_t *root = text ? json_parse_object(text, n, JSON_REJECT_DUPLICATES, path, e) : NULL;
    free(text);
    return root;
}

static inline bool tokenizer_source_id(const TokenizerSource *s, const char *token, const json_t *id, Error *e) {
    if (json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < TOKENIZER_VOCAB_MAX) return true;
    return error_set(e, "%s: id of token '%.60s' is not a whole number from 0 to %d", s->file, token,
                     TOKENIZER_VOCAB_MAX - 1);
}

/* Checks an entry of added_tokens. */
static inline bool tokenizer_source_added(const TokenizerSource *s, size_t i, const json_t *entry, Error *e) {
    const char *content = json_string_value(json_object_get(entry, "content"));
    if (!content) return error_set(e, "%s: added_tokens[%zu]: has no string in 'content'", s->file, i);
    if (!*content || strlen(content) > TOKENIZER_NAME_MAX ||
        strlen(content) != json_string_length(json_object_get(entry, "content")))
        return error_set(e, "%s: added_tokens[%zu]: '%.60s' is not a text of 1 to %d bytes", s->file, i, content,
                         TOKENIZER_NAME_MAX);
    return tokenizer_source_id(s, content, json_object_get(entry, "id"), e);
}

/* Returns the flags of an entry of added_tokens, of which "special" is true if it is missing. */
static inline uint32_t tokenizer_source_flags(const json_t *entry) {
    static const struct {
        const char *field;
        uint32_t flag;
    } fields[] = {{"rstrip", ADDED_RSTRIP},
                  {"normalized", ADDED_NORMALIZED},
                  {"lstrip", ADDED_LSTRIP},
                  {"single_word", ADDED_SINGLE_WORD}};
    uint32_t flags = json_is_false(json_object_get(entry, "special")) ? 0 : ADDED_SPECIAL;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (json_is_true(json_object_get(entry, fields[i].field))) flags |= fields[i].flag;
    return flags;
}

/* Sorts the vocabulary and the added tokens (an array of {id, content, ...}, or NULL) by id. */
static inline bool tokenizer_source_open(TokenizerSource *s, json_t *added, Error *e) {
    const char *token;
    json_t *id;
    json_object_foreach(s->vocab, token, id) {
        if (!tokenizer_source_id(s, token, id, e)) return false;
        if (json_integer_value(id) >= s->count) s->count = (int32_t)json_integer_value(id) + 1;
    }
    size_t i;
    json_t *entry;
    json_array_foreach(added, i, entry) {
        if (!tokenizer_source_added(s, i, entry, e)) return false;
        id = json_object_get(entry, "id");
        if (json_integer_value(id) >= s->count) s->count = (int32_t)json_integer_value(id) + 1;
    }
    s->token = (const char **)xcalloc((size_t)s->count, sizeof *s->token);
    s->added = (uint8_t *)xcalloc((size_t)s->count, 1);
    json_object_foreach(s->vocab, token, id) {
        const char **slot = &s->token[json_integer_value(id)];
        if (*slot)
            return error_set(e, "%s: tokens '%.60s' and '%.60s' have the same id %d", s->file, *slot, token,
                             (int)json_integer_value(id));
        *slot = token;
    }
    json_array_foreach(added, i, entry) {
        const int32_t at = (int32_t)json_integer_value(json_object_get(entry, "id"));
        token = json_string_value(json_object_get(entry, "content"));
        if (s->added[at] || (s->token[at] && strcmp(s->token[at], token)))
            return error_set(e, "%s: added_tokens[%zu]: '%.60s' has the id %d of '%.60s'", s->file, i, token, at,
                             s->token[at]);
        s->added[at] = (uint8_t)(1 + tokenizer_source_flags(entry) + (s->token[at] ? ADDED_IN_VOCABULARY : 0));
        s->token[at] = token;
    }
    return true;
}

/* Returns the byte of a token <0x00> to <0xFF>, or -1. */
static inline int tokenizer_byte_name(const char *token) {
    unsigned byte;
    char name[8];
    if (strlen(token) != 6 || sscanf(token, "<0x%2X>", &byte) != 1) return -1;
    snprintf(name, sizeof name, "<0x%02X>", byte & 255);
    return strcmp(name, token) ? -1 : (int)byte;
}

/* Appends the bytes that a token decodes to, and sets its kind. */
static inline bool tokenizer_source_bytes(const TokenizerSource *s, const int16_t byte[512], int32_t id, uint8_t *kind,
                                          TextBuffer *out, Error *e) {
    const char *token = s->token[id] ? s->token[id] : "";
    const bool apart = s->added[id] && !(s->added[id] & ADDED_IN_VOCABULARY);
    uint32_t strange = 0;
    if (s->flags & TOKENIZER_CHARACTERS) {
        const int one = s->bytes && !s->added[id] ? tokenizer_byte_name(token) : -1;
        if (one >= 0) {
            text_append(out, (const char[]){(char)one}, 1);
            *kind = TOKEN_BYTE;
        } else tokenizer_spaces(token, strlen(token), out);
        if (apart || strchr(token, ' ')) *kind = TOKEN_APART;
        return true;
    }
    const size_t before = out->length;
    if (!apart && tokenizer_unprint(byte, token, out, &strange)) return true;
    out->length = before;
    text_append(out, token, strlen(token));
    *kind = TOKEN_APART;
    return s->added[id] ||
           error_set(e, "%s: token '%.60s': character U+%04X represents no byte; expected byte-level BPE", s->file,
                     token, strange);
}

/* Fills in the tokenizer's tokens. With `guess`, for files without a list of added tokens, every token <...> that is
 * neither a byte nor the result of a merge is special. */
static inline bool tokenizer_source_tokens(const TokenizerSource *s, bool guess, Tokenizer *t, Error *e) {
    int16_t byte[512];
    tokenizer_alphabet(byte);
    bool *made = (bool *)xcalloc((size_t)s->count, sizeof *made);
    for (int32_t i = 0; i < t->merge_count; i++) made[t->merges[i].merged] = true;
    t->start = (uint32_t *)xcalloc((size_t)s->count + 1, sizeof *t->start);
    t->special = (uint8_t *)xcalloc((size_t)s->count, 1);
    t->kind = (uint8_t *)xcalloc((size_t)s->count, 1);
    TextBuffer bytes = {0};
    text_clear(&bytes);
    bool ok = true;
    for (int32_t id = 0; id < s->count && ok; id++) {
        const char *token = s->token[id] ? s->token[id] : "";
        const size_t n = strlen(token);
        if (guess && !made[id] && n > 2 && n <= TOKENIZER_NAME_MAX && token[0] == '<' && token[n - 1] == '>')
            s->added[id] = 1 + ADDED_SPECIAL;
        if (s->added[id]) tokenizer_put_added(t, id, (s->added[id] & ~ADDED_IN_VOCABULARY) - 1u, token);
        ok = tokenizer_source_bytes(s, byte, id, &t->kind[id], &bytes, e);
        if (t->special[id]) t->kind[id] = TOKEN_APART;
        if (ok && (bytes.length - t->start[id] > TOKENIZER_TOKEN_MAX || bytes.length > INT32_MAX))
            ok = error_set(e, "%s: token %d is longer than %d bytes", s->file, id, TOKENIZER_TOKEN_MAX);
        t->start[id + 1] = (uint32_t)bytes.length;
    }
    free(made);
    t->bytes = bytes.text;
    t->vocab = s->count;
    return ok;
}

/* Leaves out the merges that make a special token. */
static inline void tokenizer_source_merges(Tokenizer *t) {
    int32_t kept = 0;
    for (int32_t i = 0; i < t->merge_count; i++)
        if (!t->special[t->merges[i].merged]) t->merges[kept++] = t->merges[i];
    t->merge_count = kept;
}

/* ---- merges ---------------------------------------------------------------------------------------------------- */

static inline bool tokenizer_merge(const TokenizerSource *s, const char *where, size_t number, const char *left,
                                   const char *right, Merge *m, Error *e) {
    TextBuffer both = {0};
    text_string(&both, left);
    text_string(&both, right);
    const char *name[3] = {left, right, both.text};
    int32_t *id[3] = {&m->left, &m->right, &m->merged};
    bool ok = true;
    for (int i = 0; i < 3 && ok; i++) {
        const json_t *value = json_object_get(s->vocab, name[i]);
        if (value) *id[i] = (int32_t)json_integer_value(value);
        else
            ok = error_set(e, "%s %zu: merge of '%.60s' and '%.60s': token '%.120s' is not in the vocabulary", where,
                           number, left, right, name[i]);
    }
    m->rank = (int32_t)number;
    text_free(&both);
    return ok;
}

/* Splits "left right" at its one space, in place. */
static inline bool tokenizer_merge_text(const TokenizerSource *s, const char *where, size_t number, char *text,
                                        Merge *m, Error *e) {
    char *space = strchr(text, ' ');
    if (!space || space == text || !space[1] || strchr(space + 1, ' '))
        return error_set(e, "%s %zu: '%.60s': expected two tokens separated by one space", where, number, text);
    *space = 0;
    return tokenizer_merge(s, where, number, text, space + 1, m, e);
}

/* Reads the merges from the lines of merges.txt. */
static inline bool tokenizer_merge_lines(const TokenizerSource *s, const char *path, Tokenizer *t, Error *e) {
    size_t n, number = 0, capacity = 0;
    char *text = file_slurp(path, TOKENIZER_FILE_MAX, &n, e), *rest = text, *line;
    if (!text) return false;
    bool ok = strlen(text) == n || error_set(e, "%s: contains a NUL byte, expected text", path);
    TextBuffer where = {0};
    text_format(&where, "%s: line", path);
    while (ok && (line = strsep(&rest, "\n"))) {
        number++;
        line[strcspn(line, "\r")] = 0;
        if (!*line || (number == 1 && !strncmp(line, "#version", 8))) continue;
        if ((size_t)t->merge_count == capacity) {
            capacity = 2 * capacity + 1024;
            t->merges = (Merge *)xrealloc(t->merges, capacity, sizeof *t->merges);
        }
        ok = tokenizer_merge_text(s, where.text, number, line, &t->merges[t->merge_count], e);
        t->merge_count += ok;
    }
    text_free(&where);
    free(text);
    return ok;
}

/* Reads the merges from the list in tokenizer.json: "left right" or ["left", "right"]. */
static inline bool tokenizer_merge_array(const TokenizerSource *s, const json_t *merges, Tokenizer *t, Error *e) {
    TextBuffer where = {0};
    text_format(&where, "%s: model.merges", s->file);
    t->merges = (Merge *)xcalloc(json_array_size(merges), sizeof *t->merges);
    bool ok = true;
    size_t i;
    json_t *entry;
    json_array_foreach(merges, i, entry) {
        Merge *m = &t->merges[i];
        const char *left = json_string_value(json_array_get(entry, 0)),
                   *right = json_string_value(json_array_get(entry, 1));
        if (json_is_string(entry)) {
            char *copy = xstrdup(json_string_value(entry));
            ok = tokenizer_merge_text(s, where.text, i, copy, m, e);
            free(copy);
        } else if (left && right && json_array_size(entry) == 2)
            ok = tokenizer_merge(s, where.text, i, left, right, m, e);
        else ok = error_set(e, "%s %zu: expected a string or a pair of strings", where.text, i);
        if (!ok) break;
        t->merge_count++;
    }
    text_free(&where);
    return ok;
}

/* ---- tokenizer.json -------------------------------------------------------------------------------------------- */

#define TOKENIZER_SIGN "\xE2\x96\x81" /* U+2581 */

static inline const char *tokenizer_type(const json_t *part) {
    const char *type = json_string_value(json_object_get(part, "type"));
    return type ? type : "of no type";
}

static inline bool tokenizer_is(const json_t *part, const char *type) { return !strcmp(tokenizer_type(part), type); }

static inline bool tokenizer_json_equal(const json_t *part, const char *field, const char *text) {
    const char *value = json_string_value(json_object_get(part, field));
    return value && !strcmp(value, text);
}

/* Whether the part is a Replace of `from` by `to`. */
static inline bool tokenizer_json_replaces(const json_t *part, const char *from, const char *to) {
    return tokenizer_json_equal(json_object_get(part, "pattern"), "String", from) &&
           tokenizer_json_equal(part, "content", to);
}

/* Checks one part of the pipeline, or those of a Sequence, with `check`. */
static inline bool tokenizer_json_each(TokenizerSource *s, const json_t *part, const char *list, const char *name,
                                       bool (*check)(TokenizerSource *s, const json_t *part), Error *e) {
    if (!part || json_is_null(part)) return true;
    const bool sequence = tokenizer_is(part, "Sequence");
    const json_t *parts = json_object_get(part, list);
    const size_t n = sequence ? json_array_size(parts) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *one = sequence ? json_array_get(parts, i) : part;
        if (!check(s, one))
            return error_set(e, "%s: %s %s is not supported, or not with these settings", s->file, name,
                             tokenizer_type(one));
    }
    return true;
}

static inline bool tokenizer_json_normalizer(TokenizerSource *s, const json_t *part) {
    if (tokenizer_is(part, "NFC")) s->flags |= TOKENIZER_NFC;
    else if (tokenizer_is(part, "Prepend") && tokenizer_json_equal(part, "prepend", TOKENIZER_SIGN))
        s->flags |= TOKENIZER_PREPEND;
    else if (tokenizer_is(part, "Replace") && tokenizer_json_replaces(part, " ", TOKENIZER_SIGN))
        s->flags |= TOKENIZER_REPLACE;
    else return false;
    return true;
}

static inline bool tokenizer_json_metaspace(TokenizerSource *s, const json_t *part) {
    if (tokenizer_is(part, "Split"))
        return s->flags & TOKENIZER_REPLACE && tokenizer_json_equal(json_object_get(part, "pattern"), "String", " ") &&
               !json_is_true(json_object_get(part, "invert"));
    if (!tokenizer_is(part, "Metaspace") || !tokenizer_json_equal(part, "replacement", TOKENIZER_SIGN)) return false;
    const json_t *scheme = json_object_get(part, "prepend_scheme");
    const char *name = json_string_value(scheme);
    if (scheme && !name) return false;
    if (!name) name = json_is_false(json_object_get(part, "add_prefix_space")) ? "never" : "always";
    if (!strcmp(name, "first")) s->flags |= TOKENIZER_PREFIX | TOKENIZER_PREFIX_FIRST;
    else if (!strcmp(name, "always")) s->flags |= TOKENIZER_PREFIX;
    else if (strcmp(name, "never")) return false;
    if (!json_is_false(json_object_get(part, "split"))) s->flags |= TOKENIZER_SPLIT; /* the default is true */
    return true;
}

static inline bool tokenizer_json_decoder(TokenizerSource *s, const json_t *part) {
    if (!(s->flags & TOKENIZER_CHARACTERS)) return tokenizer_is(part, "ByteLevel");
    if (tokenizer_is(part, "ByteFallback") || tokenizer_is(part, "Fuse")) return true;
    if (tokenizer_is(part, "Replace")) return tokenizer_json_replaces(part, TOKENIZER_SIGN, " ");
    if (tokenizer_is(part, "Metaspace")) {
        if (!tokenizer_json_equal(part, "replacement", TOKENIZER_SIGN)) return false;
        if (!tokenizer_json_equal(part, "prepend_scheme", "never") &&
            !json_is_false(json_object_get(part, "add_prefix_space")))
            s->flags |= TOKENIZER_STRIP;
        return true;
    }
    const json_int_t start = json_integer_value(json_object_get(part, "start"));
    if (!tokenizer_is(part, "Strip") || !tokenizer_json_equal(part, "content", " ") || start < 0 || start > 1 ||
        json_integer_value(json_object_get(part, "stop")))
        return false;
    if (start) s->flags |= TOKENIZER_STRIP;
    return true;
}

/* Sets *pattern to the one by which byte-level BPE splits text, or NULL if it does not. */
static inline bool tokenizer_json_pattern(const char *path, const json_t *part, const char **pattern, Error *e) {
    const json_t *list = json_object_get(part, "pretokenizers"), *first = NULL, *last = part;
    if (tokenizer_is(part, "Sequence")) {
        const size_t n = json_array_size(list);
        if (n > 2)
            return error_set(e, "%s: pre_tokenizer is a Sequence of %zu parts (%s, %s, ...), expected at most 2", path,
                             n, tokenizer_type(json_array_get(list, 0)), tokenizer_type(json_array_get(list, 1)));
        if (n == 2) first = json_array_get(list, 0);
        last = json_array_get(list, n - 1); /* NULL if there is none */
    }
    const bool own = !json_is_false(json_object_get(last, "use_regex")); /* the default is true */
    const json_t *regex = json_object_get(json_object_get(first, "pattern"), "Regex");
    const bool invert = json_is_true(json_object_get(first, "invert"));
    if (!tokenizer_is(last, "ByteLevel"))
        return error_set(
            e,
            "%s: pre_tokenizer is %s, expected ByteLevel, Digits or Split before ByteLevel, Metaspace, or a "
            "normalizer that replaces spaces by U+2581",
            path, tokenizer_type(part));
    if (json_is_true(json_object_get(last, "add_prefix_space")))
        return error_set(e, "%s: pre_tokenizer ByteLevel has add_prefix_space, which is not supported", path);
    if (!first) *pattern = own ? PRETOKENIZER_GPT2 : NULL;
    else if (tokenizer_is(first, "Digits") && json_is_true(json_object_get(first, "individual_digits")) && own)
        *pattern = PRETOKENIZER_GPT2_DIGITS;
    else if (tokenizer_is(first, "Split") && json_string_length(regex) && !own &&
             tokenizer_json_equal(first, "behavior", invert ? "Removed" : "Isolated"))
        *pattern = json_string_value(regex);
    else
        return error_set(e, "%s: pre_tokenizer %s before ByteLevel is not supported with these settings", path,
                         tokenizer_type(first));
    return true;
}

/* Checks that `field` is absent, null, false, "" or 0. */
static inline bool tokenizer_json_unset(const char *path, const json_t *model, const char *field, Error *e) {
    const json_t *value = json_object_get(model, field);
    const char *text = json_string_value(value);
    if (!value || json_is_null(value) || json_is_false(value) || (text && !*text) ||
        (json_is_number(value) && json_number_value(value) == 0))
        return true;
    return error_set(e, "%s: model.%s is set, expected none for this kind of BPE", path, field);
}

/* Reads the settings of the model. */
static inline bool tokenizer_json_model(TokenizerSource *s, const json_t *model, Error *e) {
    static const char *const unset[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"};
    const bool characters = s->flags & TOKENIZER_CHARACTERS;
    for (size_t i = 0; i < sizeof unset / sizeof *unset - characters; i++)
        if (!tokenizer_json_unset(s->file, model, unset[i], e)) return false;
    if (!json_is_object(json_object_get(model, "vocab")))
        return error_set(e, "%s: model.vocab is not an object", s->file);
    if (!json_is_array(json_object_get(model, "merges")))
        return error_set(e, "%s: model.merges is not a list", s->file);
    if (json_is_true(json_object_get(model, "ignore_merges"))) s->flags |= TOKENIZER_WHOLE;
    s->vocab = json_object_get(model, "vocab");
    s->bytes = characters && json_is_true(json_object_get(model, "byte_fallback"));
    if (characters && json_is_true(json_object_get(model, "fuse_unk"))) s->flags |= TOKENIZER_FUSE;
    return true;
}

/* Reads everything but the tables. Sets *pattern for byte-level BPE. */
static inline bool tokenizer_json_form(TokenizerSource *s, const json_t *root, const char **pattern, Error *e) {
    const json_t *model = json_object_get(root, "model"), *pre = json_object_get(root, "pre_tokenizer");
    if (!json_is_object(model)) return error_set(e, "%s: has no 'model', expected a Hugging Face tokenizer", s->file);
    if (json_object_get(model, "type") && !tokenizer_is(model, "BPE"))
        return error_set(e, "%s: model is %s, expected BPE", s->file, tokenizer_type(model));
    if (!tokenizer_json_each(s, json_object_get(root, "normalizer"), "normalizers", "normalizer",
                             tokenizer_json_normalizer, e))
        return false;
    if (s->flags & TOKENIZER_REPLACE || tokenizer_is(pre, "Metaspace")) {
        s->flags |= TOKENIZER_CHARACTERS;
        if (!tokenizer_json_each(s, pre, "pretokenizers", "pre_tokenizer", tokenizer_json_metaspace, e)) return false;
        if (s->flags & TOKENIZER_NFC)
            return error_set(e, "%s: normalizer NFC is not supported with U+2581 for spaces", s->file);
    } else if (s->flags & TOKENIZER_PREPEND)
        return error_set(e, "%s: normalizer Prepend is not supported without Replace", s->file);
    else if (!tokenizer_json_pattern(s->file, pre, pattern, e)) return false;
    const json_t *decoder = json_object_get(root, "decoder");
    if (s->flags & TOKENIZER_CHARACTERS && !json_is_object(decoder))
        return error_set(e, "%s: has no decoder, expected one that replaces U+2581 by spaces", s->file);
    return tokenizer_json_each(s, decoder, "decoders", "decoder", tokenizer_json_decoder, e) &&
           tokenizer_json_model(s, model, e);
}

/* Sets the id of a token of the vocabulary or of an added token, or -1 without a name. */
static inline bool tokenizer_json_token(const TokenizerSource *s, const char *what, const char *name, int32_t *id,
                                        Error *e) {
    *id = -1;
    if (!name) return true;
    const json_t *value = json_object_get(s->vocab, name);
    if (value) *id = (int32_t)json_integer_value(value);
    for (int32_t i = 0; i < s->count && *id < 0; i++)
        if (s->added[i] && !strcmp(s->token[i], name)) *id = i;
    return *id >= 0 || error_set(e, "%s: %s '%.60s' is not in the vocabulary", s->file, what, name);
}

/* Finds the unknown token. Published byte-level tokenizers name one that does not exist, since they do not need it. */
static inline bool tokenizer_json_unknown(const TokenizerSource *s, const json_t *model, int32_t *id, Error *e) {
    const char *name = json_string_value(json_object_get(model, "unk_token"));
    if (s->flags & TOKENIZER_CHARACTERS) return tokenizer_json_token(s, "model.unk_token", name, id, e);
    if (!name || !tokenizer_json_token(s, "model.unk_token", name, id, NULL)) return true;
    return tokenizer_json_unset(s->file, model, "fuse_unk", e);
}

/* Finds the token that a post-processor puts before a text. */
static inline bool tokenizer_json_bos(const TokenizerSource *s, const json_t *part, Tokenizer *t, Error *e) {
    if (tokenizer_is(part, "Sequence")) {
        size_t i;
        json_t *one, *list = json_object_get(part, "processors");
        json_array_foreach(list, i, one) {
            if (!tokenizer_json_bos(s, tokenizer_is(one, "Sequence") ? NULL : one, t, e)) return false;
        }
        return true;
    }
    if (!part || json_is_null(part) || tokenizer_is(part, "ByteLevel")) return true;
    if (!tokenizer_is(part, "TemplateProcessing"))
        return error_set(e, "%s: post_processor %s is not supported", s->file, tokenizer_type(part));
    const json_t *single = json_object_get(part, "single");
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *token = json_object_get(json_array_get(single, i), "SpecialToken");
        if (!token) break; /* the text */
        const char *name = json_string_value(json_object_get(token, "id"));
        if (i || !name)
            return error_set(e, "%s: post_processor has %zu tokens before the text, expected at most one", s->file,
                             i + 1);
        if (!tokenizer_json_token(s, "the post_processor's token", name, &t->bos, e)) return false;
        t->flags |= TOKENIZER_ADD_BOS;
    }
    return true;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* Finds or adds the end of text. */
static inline bool tokenizer_guess_end(Tokenizer *t, Error *e) {
    static const char *const ends[] = {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"};
    t->eos = -1;
    for (size_t i = 0; i < sizeof ends / sizeof *ends && t->eos < 0; i++) t->eos = tokenizer_special(t, ends[i]);
    if (t->eos >= 0) return true;
    if (!tokenizer_add_special(t, ends[0], e)) return false;
    t->eos = t->vocab - 1;
    return true;
}

/* Adds the added tokens of tokenizer_config.json, {"id": {"content": text, ...}}, to those of tokenizer.json, or
 * changes the flags of these. */
static inline bool tokenizer_add_configured(json_t *added, json_t *configured, Error *e) {
    json_t *known = json_object(), *entry;
    const char *id, *name;
    size_t i;
    bool ok = true;
    json_array_foreach(added, i, entry) {
        if ((name = json_string_value(json_object_get(entry, "content")))) json_object_set(known, name, entry);
    }
    json_object_foreach(configured, id, entry) {
        char *end;
        const long long number = strtoll(id, &end, 10);
        name = json_string_value(json_object_get(entry, "content"));
        ok = name && *id && !*end && number >= 0;
        if (!ok) error_set(e, "tokenizer_config.json: added_tokens_decoder: '%.60s' is not a token with an id", id);
        if (!ok) break;
        json_t *old = json_object_get(known, name);
        if (!old) {
            old = json_pack("{s:I}", "id", (json_int_t)number);
            json_array_append_new(added, old);
        }
        json_object_update(old, entry);
    }
    json_decref(known);
    return ok;
}

/* Reads the tables of vocab.json (json) and merges.txt, or of tokenizer.json (json, with merges NULL). configured:
 * added_tokens_decoder of tokenizer_config.json, or NULL. */
static inline bool tokenizer_read_files(Tokenizer *t, const char *json, const char *merges, json_t *configured,
                                        Error *e) {
    json_t *root = tokenizer_json(json, e);
    if (!root) return false;
    const json_t *model = json_object_get(root, "model");
    json_t *added = json_incref(merges ? NULL : json_object_get(root, "added_tokens"));
    if (configured && !json_is_array(added)) {
        json_decref(added);
        added = json_array();
    }
    TokenizerSource s = {.file = json, .vocab = root};
    const char *pattern = merges ? PRETOKENIZER_GPT2 : NULL;
    t->eos = t->bos = t->unknown = -1;
    bool ok = merges || tokenizer_json_form(&s, root, &pattern, e);
    ok = ok && (!configured || tokenizer_add_configured(added, configured, e)) && tokenizer_source_open(&s, added, e) &&
         (merges ? tokenizer_merge_lines(&s, merges, t, e)
                 : tokenizer_merge_array(&s, json_object_get(model, "merges"), t, e)) &&
         tokenizer_source_tokens(&s, !added, t, e);
    if (ok) {
        t->flags = s.flags;
        t->pattern = pattern ? xstrdup(pattern) : NULL;
        tokenizer_source_merges(t);
        if (!merges)
            ok = tokenizer_json_bos(&s, json_object_get(root, "post_processor"), t, e) &&
                 tokenizer_json_unknown(&s, model, &t->unknown, e);
    }
    free(s.token);
    free(s.added);
    json_decref(added);
    json_decref(root);
    return ok;
}

/* Opens vocab.json (json) and merges.txt, or tokenizer.json (json, with merges NULL). */
static inline bool tokenizer_open_files(Tokenizer *t, const char *json, const char *merges, Error *e) {
    return tokenizer_read_files(t, json, merges, NULL, e) && tokenizer_guess_end(t, e) && tokenizer_start(t, json, e);
}

/* Opens a file that contains a blob, compressed or not. If it fails with *is_blob set, the blob is damaged. */
static inline bool tokenizer_open_blob(Tokenizer *t, const char *path, bool *is_blob, Error *e) {
    Reader r;
    char magic[8];
    Error inner;
    *is_blob = reader_open(&r, path, NULL) && reader_read(&r, magic, sizeof magic, "magic", NULL) &&
               !memcmp(magic, "LLMCTOKN", sizeof magic);
    reader_close(&r);
    if (!*is_blob) return false;
    size_t n;
    char *blob = file_slurp(path, TOKENIZER_FILE_MAX, &n, e);
    const bool ok = blob && (tokenizer_load(t, blob, n, &inner) || error_set(e, "%s: %s", path, inner.text));
    free(blob);
    return ok;
}

static inline char *tokenizer_path(const char *directory, const char *file) {
    TextBuffer b = {0};
    text_format(&b, "%s/%s", directory, file);
    return b.text;
}

/* ---- a model's folder ------------------------------------------------------------------------------------------ */

/* Reads a JSON file of the folder, if it exists. */
static inline bool tokenizer_folder_json(const char *folder, const char *file, json_t **root, Error *e) {
    char *path = tokenizer_path(folder, file);
    *root = NULL;
    const bool ok = !file_exists(path) || (*root = tokenizer_json(path, e));
    free(path);
    return ok;
}

/* Returns the text of a named token: a string or {"content": string, ...}; or NULL. */
static inline const char *tokenizer_folder_name(json_t *const configs[2], const char *field) {
    for (int i = 0; i < 2; i++) {
        const json_t *value = json_object_get(configs[i], field);
        if (json_is_object(value)) value = json_object_get(value, "content");
        if (json_is_string(value)) return json_string_value(value);
    }
    return NULL;
}

/* Sets *id to the token that the configurations name in `field`, if they do, and makes it special. A name that is not
 * in the vocabulary is an error if `needed` is set. */
static inline bool tokenizer_folder_token(Tokenizer *t, const char *folder, json_t *const configs[2], const char *field,
                                          bool needed, int32_t *id, Error *e) {
    const char *name = tokenizer_folder_name(configs, field);
    if (!name) return true;
    TokenizerAdded *added = tokenizer_added(t, name);
    if (added) {
        added->flags |= ADDED_SPECIAL;
        t->special[added->id] = 1;
        *id = added->id;
        return true;
    }
    const int32_t found = tokenizer_find(t, name, strlen(name));
    if (found < 0 && !needed) return true;
    if (found < 0 || !*name || strlen(name) > TOKENIZER_NAME_MAX)
        return error_set(e, "%s: %s '%.60s' is not in the vocabulary", folder, field, name);
    tokenizer_put_added(t, found, ADDED_SPECIAL, name);
    t->kind[found] = TOKEN_APART;
    *id = found;
    return true;
}

/* Appends the eos_token_id of a configuration, a number or a list of numbers, to ends. */
static inline bool tokenizer_folder_ends(const char *folder, const char *file, const json_t *config, TokenList *ends,
                                         Error *e) {
    const json_t *value = json_object_get(config, "eos_token_id");
    const size_t n = json_is_array(value) ? json_array_size(value) : value && !json_is_null(value);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= TOKENIZER_VOCAB_MAX)
            return error_set(e, "%s/%s: eos_token_id is not a token or a list of tokens", folder, file);
        token_list_append(ends, (int32_t)json_integer_value(id));
    }
    return true;
}

/* Applies tokenizer_config.json and special_tokens_map.json (configs), and the ends of the other two files. */
static inline bool tokenizer_folder_apply(Tokenizer *t, const char *folder, json_t *const configs[2], TokenList *ends,
                                          Error *e) {
    int32_t other = -1;
    if (!tokenizer_folder_token(t, folder, configs, "eos_token", true, &t->eos, e) ||
        !tokenizer_folder_token(t, folder, configs, "bos_token", true, &t->bos, e) ||
        !tokenizer_folder_token(t, folder, configs, "unk_token", false, &other, e) ||
        !tokenizer_folder_token(t, folder, configs, "pad_token", false, &other, e))
        return false;
    const json_t *add_bos = json_object_get(configs[0], "add_bos_token");
    if (json_is_true(add_bos) && t->bos >= 0) t->flags |= TOKENIZER_ADD_BOS;
    if (json_is_false(add_bos)) t->flags &= ~(uint32_t)TOKENIZER_ADD_BOS;
    tokenizer_source_merges(t);
    if (t->eos < 0 && ends->count) t->eos = ends->ids[0];
    else if (t->eos < 0 && !tokenizer_guess_end(t, e)) return false;
    token_list_append(ends, t->eos);
    Error inner;
    return tokenizer_set_ends(t, ends->ids, ends->count, &inner) ||
           error_set(e, "%s: eos_token_id: %s", folder, inner.text);
}

/* Checks that vocab.json without a tokenizer.json belongs to GPT-2's pattern, which is the one that is assumed. */
static inline bool tokenizer_folder_class(const char *folder, const json_t *config, Error *e) {
    const char *name = json_string_value(json_object_get(config, "tokenizer_class"));
    if (!name || !strncmp(name, "GPT2Tokenizer", 13)) return true;
    return error_set(e, "%s: contains no tokenizer.json, which is needed for the class %.60s of tokenizer_config.json",
                     folder, name);
}

/* Reads the vocabulary of a folder. *path: the file that it is in, for messages; the caller frees it. */
static inline bool tokenizer_folder_vocabulary(Tokenizer *t, const char *folder, const json_t *config, char **path,
                                               Error *e) {
    json_t *configured = json_object_get(config, "added_tokens_decoder");
    static const char *const files[][2] = {
        {"tokenizer.json", NULL}, {"vocab.json", "merges.txt"}, {"encoder.json", "vocab.bpe"}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *json = tokenizer_path(folder, files[i][0]);
        char *merges = files[i][1] ? tokenizer_path(folder, files[i][1]) : NULL;
        const bool here = file_exists(json) && (!merges || file_exists(merges));
        const bool ok = here && (!merges || tokenizer_folder_class(folder, config, e)) &&
                        tokenizer_read_files(t, json, merges, configured, e);
        free(merges);
        if (here) {
            *path = json;
            return ok;
        }
        free(json);
    }
    char *model = tokenizer_path(folder, "tokenizer.model");
    const bool here = file_exists(model);
    free(model);
    return error_set(e, "%s: contains neither tokenizer.json nor vocab.json and merges.txt%s", folder,
                     here ? "; tokenizer.model is not read, but transformers writes tokenizer.json from it" : "");
}

/* Opens the tokenizer of a model's folder, as described above. */
static inline bool tokenizer_open_folder(Tokenizer *t, const char *folder, Error *e) {
    static const char *const names[] = {"tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
                                        "config.json"};
    json_t *root[4] = {NULL};
    TokenList ends = {0};
    char *path = NULL;
    *t = (Tokenizer){0};
    bool ok = true;
    for (int i = 0; i < 4 && ok; i++) ok = tokenizer_folder_json(folder, names[i], &root[i], e);
    ok = ok && tokenizer_folder_vocabulary(t, folder, root[0], &path, e);
    for (int i = 2; i < 4 && ok; i++) ok = tokenizer_folder_ends(folder, names[i], root[i], &ends, e);
    ok = ok && tokenizer_folder_apply(t, folder, root, &ends, e) && tokenizer_start(t, path, e);
    for (int i = 0; i < 4; i++) json_decref(root[i]);
    token_list_free(&ends);
    free(path);
    if (!ok) tokenizer_free(t);
    return ok;
}

/* ---- any form -------------------------------------------------------------------------------------------------- */

static inline bool tokenizer_open_spec(Tokenizer *t, const char *spec, Error *e) {
    struct stat st;
    if (!stat(spec, &st)) {
        if (S_ISDIR(st.st_mode)) return tokenizer_open_folder(t, spec, e);
        bool is_blob;
        const bool ok = tokenizer_open_blob(t, spec, &is_blob, e);
        return is_blob ? ok : tokenizer_open_files(t, spec, NULL, e);
    }
    for (const char *colon = strchr(spec, ':'); colon; colon = strchr(colon + 1, ':')) {
        char *json = xstrndup(spec, (size_t)(colon - spec));
        const bool here = !access(json, F_OK), ok = here && tokenizer_open_files(t, json, colon + 1, e);
        free(json);
        if (here) return ok;
    }
    return error_set(e, "%s: no such tokenizer; expected bytes, a directory, tokenizer.json or vocab.json:merges.txt",
                     spec);
}

/* Opens the tokenizer that a user names: "bytes", VOCAB.JSON:MERGES.TXT, a tokenizer.json, a file that contains a blob,
 * or a folder with published files. */
static inline bool tokenizer_open(Tokenizer *t, const char *spec, Error *e) {
    if (!strcmp(spec, "bytes")) return tokenizer_bytes(t, e);
    *t = (Tokenizer){0};
    if (tokenizer_open_spec(t, spec, e)) return true;
    tokenizer_free(t);
    return false;
}

#endif
