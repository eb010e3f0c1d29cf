/* tokenizer_files.h - readers of published vocabularies: vocab.json + merges.txt and tokenizer.json.
 *
 * vocab.json (OpenAI: encoder.json) maps tokens to ids. merges.txt (vocab.bpe) has one merge per line, lowest rank
 * first, after a line `#version`. Both write bytes as printable characters: "Ġ" is a space (GPT-2's bytes_to_unicode).
 * An entry <...> that is not a byte and not the result of a merge is a special token.
 *
 * tokenizer.json contains the same tables and the pre-tokenizer. Supported are byte-level BPE models with one of the
 * pre-tokenizers ByteLevel, Digits (individual) + ByteLevel, and Split (by a regular expression) + ByteLevel. Its
 * added_tokens become special tokens. Other models, normalizers, byte_fallback, dropout, subword prefixes and suffixes
 * and add_prefix_space are rejected, each with its own message. Post-processors are ignored: encoding adds no tokens.
 *
 * The end of text is <|endoftext|>, else <|end_of_text|>, </s> or <eos>. If the vocabulary has none of these,
 * <|endoftext|> is added as the next id.
 */
#ifndef LLMC_TEXT_TOKENIZER_FILES_H
#define LLMC_TEXT_TOKENIZER_FILES_H

#include "../base/error.h" /* error_set, Error, xcalloc, xstrdup, ... */
#include "../base/io.h"    /* file_slurp, Reader, reader_close, reader_open, ... */
#include "../base/text.h"  /* TextBuffer, text_format, text_free, text_append, ... */
#include "bpe.h"           /* Merge */
#include "pretokenize.h"   /* PRETOKENIZER_GPT2, PRETOKENIZER_GPT2_DIGITS */
#include "tokenizer.h"     /* Tokenizer, TOKENIZER_TOKEN_MAX, TOKENIZER_VOCAB_MAX, tokenizer_add_special, ... */
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
    bool *added;        /* (count) `token` is a special token, as raw text */
    int32_t count;
} TokenizerSource;

static inline json_t *tokenizer_json(const char *path, Error *e) {
    size_t n;
    json_error_t bad;
    char *text = file_slurp(path, TOKENIZER_FILE_MAX, &n, e);
    if (!text) return NULL;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &bad);
    free(text);
    if (!root) error_set(e, "%s: line %d, column %d: %s", path, bad.line, bad.column, bad.text);
    else if (!json_is_object(root)) {
        error_set(e, "%s: is not a JSON object", path);
        json_decref(root);
        return NULL;
    }
    return root;
}

static inline bool tokenizer_source_id(const TokenizerSource *s, const char *token, const json_t *id, Error *e) {
    if (json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < TOKENIZER_VOCAB_MAX) return true;
    return error_set(e, "%s: id of token '%.60s' is not a whole number from 0 to %d", s->file, token,
                     TOKENIZER_VOCAB_MAX - 1);
}

/* Sorts the vocabulary and the added tokens (an array of {id, content}, or NULL) by id. */
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
        if (!json_is_string(json_object_get(entry, "content")))
            return error_set(e, "%s: added_tokens[%zu]: has no string in 'content'", s->file, i);
        id = json_object_get(entry, "id");
        if (!tokenizer_source_id(s, json_string_value(json_object_get(entry, "content")), id, e)) return false;
        if (json_integer_value(id) >= s->count) s->count = (int32_t)json_integer_value(id) + 1;
    }
    s->token = (const char **)xcalloc((size_t)s->count, sizeof *s->token);
    s->added = (bool *)xcalloc((size_t)s->count, sizeof *s->added);
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
        s->token[at] = token;
        s->added[at] = true;
    }
    return true;
}

/* Fills in the tokenizer's tokens. Added tokens are special. With `guess`, for files without a list of added tokens, so
 * is every token <...> that is neither a byte nor the result of a merge. */
static inline bool tokenizer_source_tokens(const TokenizerSource *s, bool guess, Tokenizer *t, Error *e) {
    int16_t byte[512];
    tokenizer_alphabet(byte);
    bool *made = (bool *)xcalloc((size_t)s->count, sizeof *made);
    for (int32_t i = 0; i < t->merge_count; i++) made[t->merges[i].merged] = true;
    t->start = (uint32_t *)xcalloc((size_t)s->count + 1, sizeof *t->start);
    t->special = (uint8_t *)xcalloc((size_t)s->count, 1);
    TextBuffer bytes = {0};
    text_clear(&bytes);
    bool ok = true;
    for (int32_t id = 0; id < s->count && ok; id++) {
        const char *token = s->token[id] ? s->token[id] : "";
        const size_t n = strlen(token);
        uint32_t strange;
        t->special[id] = s->added[id] || (guess && !made[id] && n > 2 && token[0] == '<' && token[n - 1] == '>');
        if (t->special[id]) text_append(&bytes, token, n);
        else if (!tokenizer_unprint(byte, token, &bytes, &strange))
            ok = error_set(e, "%s: token '%.60s': character U+%04X represents no byte; expected byte-level BPE",
                           s->file, token, strange);
        if (ok && (bytes.length - t->start[id] > TOKENIZER_TOKEN_MAX || bytes.length > INT32_MAX))
            ok = error_set(e, "%s: token %d is longer than %d bytes", s->file, id, TOKENIZER_TOKEN_MAX);
        t->start[id + 1] = (uint32_t)bytes.length;
    }
    free(made);
    t->bytes = bytes.text;
    t->vocab = s->count;
    return ok;
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

static inline const char *tokenizer_type(const json_t *part) {
    const char *type = json_string_value(json_object_get(part, "type"));
    return type ? type : "of no type";
}

/* Returns the pattern that splits text, or NULL on an error. */
static inline const char *tokenizer_json_pattern(const char *path, const json_t *part, Error *e) {
    const json_t *list = json_object_get(part, "pretokenizers"), *first = NULL, *last = part;
    if (!strcmp(tokenizer_type(part), "Sequence")) {
        const size_t n = json_array_size(list);
        if (n == 2) first = json_array_get(list, 0);
        last = n == 1 || n == 2 ? json_array_get(list, n - 1) : NULL;
    }
    const json_t *use_regex = json_object_get(last, "use_regex");
    const bool regex = !json_is_false(use_regex); /* the default is true */
    const json_t *pattern = json_object_get(json_object_get(first, "pattern"), "Regex");
    const char *behavior = json_string_value(json_object_get(first, "behavior"));
    const bool invert = json_is_true(json_object_get(first, "invert"));
    if (strcmp(tokenizer_type(last), "ByteLevel"))
        error_set(e, "%s: pre_tokenizer is %s, expected ByteLevel, or Digits or Split before ByteLevel", path,
                  tokenizer_type(part));
    else if (json_is_true(json_object_get(last, "add_prefix_space")))
        error_set(e, "%s: pre_tokenizer ByteLevel has add_prefix_space, which is not supported", path);
    else if (!first && regex) return PRETOKENIZER_GPT2;
    else if (!first) error_set(e, "%s: pre_tokenizer ByteLevel has use_regex false and no Split before it", path);
    else if (!strcmp(tokenizer_type(first), "Digits") && json_is_true(json_object_get(first, "individual_digits")) &&
             regex)
        return PRETOKENIZER_GPT2_DIGITS;
    else if (!strcmp(tokenizer_type(first), "Split") && json_is_string(pattern) && !regex && behavior &&
             !strcmp(behavior, invert ? "Removed" : "Isolated"))
        return json_string_value(pattern);
    else
        error_set(e, "%s: pre_tokenizer %s before ByteLevel is not supported with these settings", path,
                  tokenizer_type(first));
    return NULL;
}

/* Checks that `field` is absent, null, false, "" or 0. */
static inline bool tokenizer_json_unset(const char *path, const json_t *model, const char *field, Error *e) {
    const json_t *value = json_object_get(model, field);
    const char *text = json_string_value(value);
    if (!value || json_is_null(value) || json_is_false(value) || (text && !*text) ||
        (json_is_number(value) && json_number_value(value) == 0))
        return true;
    return error_set(e, "%s: model.%s is set, expected none for byte-level BPE", path, field);
}

static inline bool tokenizer_json_check(const char *path, const json_t *root, Error *e) {
    static const char *const unset[] = {"dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *model = json_object_get(root, "model"), *normalizer = json_object_get(root, "normalizer");
    if (!json_is_object(model)) return error_set(e, "%s: has no 'model', expected a Hugging Face tokenizer", path);
    const json_t *type = json_object_get(model, "type");
    if (type && strcmp(tokenizer_type(model), "BPE"))
        return error_set(e, "%s: model is %s, expected BPE over bytes", path, tokenizer_type(model));
    if (normalizer && !json_is_null(normalizer))
        return error_set(e, "%s: has a normalizer (%s), expected none", path, tokenizer_type(normalizer));
    for (size_t i = 0; i < sizeof unset / sizeof *unset; i++)
        if (!tokenizer_json_unset(path, model, unset[i], e)) return false;
    if (!json_is_object(json_object_get(model, "vocab"))) return error_set(e, "%s: model.vocab is not an object", path);
    if (!json_is_array(json_object_get(model, "merges"))) return error_set(e, "%s: model.merges is not a list", path);
    return true;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* Finds or adds the end of text and checks the tables. */
static inline bool tokenizer_finish(Tokenizer *t, const char *name, Error *e) {
    static const char *const ends[] = {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"};
    tokenizer_list_specials(t);
    t->eos = -1;
    for (size_t i = 0; i < sizeof ends / sizeof *ends && t->eos < 0; i++) t->eos = tokenizer_special(t, ends[i]);
    if (t->eos < 0) {
        if (!tokenizer_add_special(t, ends[0], e)) return false;
        t->eos = t->vocab - 1;
    }
    return tokenizer_start(t, name, e);
}

/* Opens vocab.json (json) and merges.txt, or tokenizer.json (json, with merges NULL). */
static inline bool tokenizer_open_files(Tokenizer *t, const char *json, const char *merges, Error *e) {
    json_t *root = tokenizer_json(json, e);
    if (!root) return false;
    const json_t *model = json_object_get(root, "model");
    json_t *added = merges ? NULL : json_object_get(root, "added_tokens");
    TokenizerSource s = {.file = json, .vocab = merges ? root : json_object_get(model, "vocab")};
    const char *pattern = PRETOKENIZER_GPT2;
    bool ok = merges || (tokenizer_json_check(json, root, e) &&
                         (pattern = tokenizer_json_pattern(json, json_object_get(root, "pre_tokenizer"), e)));
    ok = ok && tokenizer_source_open(&s, added, e) &&
         (merges ? tokenizer_merge_lines(&s, merges, t, e)
                 : tokenizer_merge_array(&s, json_object_get(model, "merges"), t, e)) &&
         tokenizer_source_tokens(&s, !added, t, e);
    if (ok) {
        t->pattern = xstrdup(pattern);
        t->whole = !merges && json_is_true(json_object_get(model, "ignore_merges"));
        ok = tokenizer_finish(t, json, e);
    }
    free(s.token);
    free(s.added);
    json_decref(root);
    return ok;
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

/* Opens a directory that contains tokenizer.json, vocab.json and merges.txt, or encoder.json and vocab.bpe. */
static inline bool tokenizer_open_directory(Tokenizer *t, const char *path, Error *e) {
    static const char *const files[][2] = {
        {"tokenizer.json", NULL}, {"vocab.json", "merges.txt"}, {"encoder.json", "vocab.bpe"}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *json = tokenizer_path(path, files[i][0]);
        char *merges = files[i][1] ? tokenizer_path(path, files[i][1]) : NULL;
        const bool here = !access(json, F_OK) && (!merges || !access(merges, F_OK));
        const bool ok = here && tokenizer_open_files(t, json, merges, e);
        free(json);
        free(merges);
        if (here) return ok;
    }
    return error_set(e, "%s: contains neither tokenizer.json nor vocab.json and merges.txt", path);
}

static inline bool tokenizer_open_spec(Tokenizer *t, const char *spec, Error *e) {
    struct stat st;
    if (!stat(spec, &st)) {
        if (S_ISDIR(st.st_mode)) return tokenizer_open_directory(t, spec, e);
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
 * or a directory with published files. */
static inline bool tokenizer_open(Tokenizer *t, const char *spec, Error *e) {
    if (!strcmp(spec, "bytes")) return tokenizer_bytes(t, e);
    *t = (Tokenizer){0};
    if (tokenizer_open_spec(t, spec, e)) return true;
    tokenizer_free(t);
    return false;
}

#endif
