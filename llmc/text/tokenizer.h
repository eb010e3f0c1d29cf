/* tokenizer.h - tokenizers: GPT-2's byte-level BPE, and one token per byte.
 *
 * Encoding splits the text into pieces with a pattern (pretokenize.h), turns each piece into the tokens of its bytes,
 * and merges these (bpe.h). The ids equal those of tiktoken and of Hugging Face's tokenizers for every string that
 * those accept.
 *
 * Invalid UTF-8 is neither rejected nor replaced. A run of bytes outside well-formed characters is a separate piece,
 * and the text before it is split as if it ended there. Therefore decode(encode(x)) == x for any bytes x, including
 * NULs. (tiktoken accepts only well-formed strings; it and `tokenizers` replace invalid bytes with U+FFFD.)
 *
 * Special tokens, such as <|endoftext|>, are recognised in text only if the caller of the encoder requests it, so user
 * input cannot end a turn. The leftmost special token is recognised first; if several begin at the same place, the
 * longest one.
 *
 * The byte tokenizer, for models trained from scratch: ids 0 to 255 are the bytes, followed by <|endoftext|> 256,
 * <|im_start|> 257, <|im_end|> 258 and <|pad|> 259.
 *
 * Blob format in checkpoints and shards, little-endian; equal tokenizers have equal blobs:
 *
 *   0   char[8]   "LLMCTOKN"
 *   8   uint32[8] version 1, vocab V, end-of-text id, flags (1: a piece that is a token is not merged), merges M,
 *                 specials S, bytes P of the pattern, bytes B of all tokens
 *   40  pattern   P bytes of UTF-8; P = 0: text is not split
 *       lengths   uint16[V], 0 for an id without a token
 *       tokens    B bytes: the bytes of all tokens, concatenated
 *       specials  uint32[S], ascending ids
 *       merges    {uint32 left, right, merged}[M], lowest rank first; merged is the concatenation of left and right
 *
 *     Tokenizer t;
 *     TokenList ids = {0};
 *     if (!tokenizer_open(&t, "gpt2/vocab.json:gpt2/merges.txt", e)) return false;      // tokenizer_files.h
 *     if (!tokenizer_encode(&t, text, strlen(text), false, &ids, e)) return false;
 *     tokenizer_decode(&t, ids.ids, ids.count, true, &buffer);
 *     tokenizer_free(&t);
 *
 * Because of a cache, a tokenizer may encode in only one thread at a time; decoding has no such limit.
 */
#ifndef LLMC_TEXT_TOKENIZER_H
#define LLMC_TEXT_TOKENIZER_H

#include "../base/error.h" /* error_set, Error, xrealloc, xcalloc, ... */
#include "../base/io.h"    /* XXH3_64bits */
#include "../base/text.h"  /* text_append, TokenList, TextBuffer, token_list_append, ... */
#include "bpe.h"           /* Merge, Bpe, bpe_encode, bpe_free, ... */
#include "pretokenize.h"   /* Pretokenizer, pretokenizer_close, pretokenizer_next, pretokenizer_open */

enum {
    TOKENIZER_VOCAB_MAX = (1 << 22) - 128, /* the same limit as in config.h */
    TOKENIZER_TOKEN_MAX = 65535,           /* maximum bytes of a token */
    TOKENIZER_TEXT_MAX = 1 << 30,          /* maximum bytes of one call of the encoder */
    TOKENIZER_WHOLE = 1,                   /* flag of the blob */
};

typedef struct Tokenizer {
    int32_t vocab; /* ids are 0 .. vocab-1 */
    int32_t eos;   /* the end of text, a special token */

    char *bytes;                      /* bytes of all tokens */
    uint32_t *start;                  /* (vocab + 1) token i is bytes[start[i] .. start[i+1]) */
    uint8_t *special;                 /* (vocab) 1 for special tokens */
    int32_t *specials, special_count; /* ids of the special tokens, longest first */
    bool special_first[256];          /* whether a special token begins with this byte */
    Merge *merges;                    /* (merge_count) in order of rank */
    int32_t merge_count;
    bool whole;     /* a piece that is a token is encoded as that token, without merges ("ignore_merges") */
    char *pattern;  /* NULL: text is one piece */
    int32_t *index; /* whole: open-addressed table of ids by bytes, -1 empty */
    uint32_t index_mask;
    struct TokenizerScratch {
        Bpe bpe;
        Pretokenizer pieces;
    } * scratch; /* changed by encoding; NULL before tokenizer_start() */
} Tokenizer;

/* ---- building -------------------------------------------------------------------------------------------------- */

static inline const char *tokenizer_token(const Tokenizer *t, int32_t id, size_t *n) {
    *n = t->start[id + 1] - t->start[id];
    return t->bytes + t->start[id];
}

static inline void tokenizer_free(Tokenizer *t) {
    if (t->scratch) {
        bpe_free(&t->scratch->bpe);
        pretokenizer_close(&t->scratch->pieces);
    }
    free(t->scratch);
    free(t->bytes);
    free(t->start);
    free(t->special);
    free(t->specials);
    free(t->merges);
    free(t->pattern);
    free(t->index);
    *t = (Tokenizer){0};
}

/* Returns the id of the special token `name`, or -1. */
static inline int32_t tokenizer_special(const Tokenizer *t, const char *name) {
    const size_t length = strlen(name);
    for (int32_t i = 0; i < t->special_count; i++) {
        size_t n;
        const char *token = tokenizer_token(t, t->specials[i], &n);
        if (n == length && !memcmp(token, name, n)) return t->specials[i];
    }
    return -1;
}

/* Returns the id of the ordinary token with these bytes, or -1. Searches all tokens unless the tokenizer has an
 * index. */
static inline int32_t tokenizer_find(const Tokenizer *t, const char *bytes, size_t length) {
    size_t n;
    if (!t->index) {
        for (int32_t id = 0; id < t->vocab; id++)
            if (!t->special[id] && t->start[id + 1] - t->start[id] == length &&
                !memcmp(tokenizer_token(t, id, &n), bytes, length))
                return id;
        return -1;
    }
    for (uint32_t i = (uint32_t)XXH3_64bits(bytes, length);; i++) {
        const int32_t id = t->index[i & t->index_mask];
        if (id < 0) return -1;
        const char *token = tokenizer_token(t, id, &n);
        if (n == length && !memcmp(token, bytes, n)) return id;
    }
}

static inline void tokenizer_start_index(Tokenizer *t) {
    size_t slots = 16;
    while (slots < 2 * (size_t)t->vocab) slots *= 2;
    t->index = (int32_t *)xrealloc(NULL, slots, sizeof *t->index);
    t->index_mask = (uint32_t)(slots - 1);
    memset(t->index, 0xFF, slots * sizeof *t->index);
    for (int32_t id = 0; id < t->vocab; id++) {
        size_t n;
        const char *token = tokenizer_token(t, id, &n);
        if (t->special[id] || !n || tokenizer_find(t, token, n) >= 0) continue;
        uint32_t i = (uint32_t)XXH3_64bits(token, n);
        while (t->index[i & t->index_mask] >= 0) i++;
        t->index[i & t->index_mask] = id;
    }
}

static inline int tokenizer_longer_first(const void *a, const void *b, void *tokenizer) {
    const Tokenizer *t = (const Tokenizer *)tokenizer;
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    size_t nx, ny;
    tokenizer_token(t, x, &nx);
    tokenizer_token(t, y, &ny);
    return nx != ny ? (nx < ny ? 1 : -1) : (x > y) - (x < y);
}

/* Lists the special tokens, longest first, then by id. */
static inline void tokenizer_list_specials(Tokenizer *t) {
    t->special_count = 0;
    memset(t->special_first, 0, sizeof t->special_first);
    for (int32_t id = 0; id < t->vocab; id++) t->special_count += t->special[id];
    t->specials = (int32_t *)xrealloc(t->specials, (size_t)t->special_count, sizeof *t->specials);
    int32_t at = 0;
    for (int32_t id = 0; id < t->vocab; id++) {
        size_t n;
        if (!t->special[id]) continue;
        t->special_first[(unsigned char)*tokenizer_token(t, id, &n)] = true;
        t->specials[at++] = id;
    }
    qsort_r(t->specials, (size_t)at, sizeof *t->specials, tokenizer_longer_first, t);
}

/* Checks a tokenizer whose tables are filled in and prepares it for encoding. Error messages begin with `name`. */
static inline bool tokenizer_start(Tokenizer *t, const char *name, Error *e) {
    struct TokenizerScratch *s = t->scratch = (struct TokenizerScratch *)xcalloc(1, sizeof *s);
    if (t->eos < 0 || t->eos >= t->vocab || !t->special[t->eos])
        return error_set(e, "%s: end of text is token %d, expected a special token below %d", name, t->eos, t->vocab);
    size_t n;
    for (int i = 0; i < 256; i++) s->bpe.byte_id[i] = -1;
    for (int32_t id = 0; id < t->vocab; id++) {
        const char *token = tokenizer_token(t, id, &n);
        if (t->special[id] && !n) return error_set(e, "%s: special token %d is empty", name, id);
        if (t->special[id] || n != 1) continue;
        int32_t *byte = &s->bpe.byte_id[(unsigned char)*token];
        if (*byte >= 0)
            return error_set(e, "%s: tokens %d and %d are both byte 0x%02X", name, *byte, id, (unsigned char)*token);
        *byte = id;
    }
    for (int i = 0; i < 256; i++)
        if (s->bpe.byte_id[i] < 0)
            return error_set(e, "%s: byte 0x%02X has no token, expected one for each of the 256 bytes", name, i);
    for (int32_t i = 0; i < t->merge_count; i++) {
        const Merge m = t->merges[i];
        size_t left, right;
        if (m.left < 0 || m.left >= t->vocab || m.right < 0 || m.right >= t->vocab || m.merged < 0 ||
            m.merged >= t->vocab)
            return error_set(e, "%s: merge %d has a token id outside the vocabulary of %d", name, i, t->vocab);
        const char *a = tokenizer_token(t, m.left, &left), *b = tokenizer_token(t, m.right, &right),
                   *c = tokenizer_token(t, m.merged, &n);
        if (!left || !right || n != left + right || memcmp(c, a, left) || memcmp(c + left, b, right))
            return error_set(e, "%s: merge %d: token %d is not token %d followed by token %d", name, i, m.merged,
                             m.left, m.right);
    }
    tokenizer_list_specials(t);
    if (t->whole) tokenizer_start_index(t);
    if (t->merge_count) bpe_start(&s->bpe, t->merges, t->merge_count);
    return !t->pattern || pretokenizer_open(&s->pieces, t->pattern, e);
}

/* Appends a token of n bytes, with the next id. */
static inline void tokenizer_append(Tokenizer *t, const char *token, size_t n, bool special) {
    const uint32_t at = t->vocab ? t->start[t->vocab] : 0;
    t->bytes = (char *)xrealloc(t->bytes, at + n + 1, 1);
    t->start = (uint32_t *)xrealloc(t->start, (size_t)t->vocab + 2, sizeof *t->start);
    t->special = (uint8_t *)xrealloc(t->special, (size_t)t->vocab + 1, 1);
    if (n) memcpy(t->bytes + at, token, n);
    t->start[t->vocab] = at;
    t->special[t->vocab++] = special;
    t->start[t->vocab] = at + (uint32_t)n;
}

/* Adds the special token `name` with the next id, unless it exists. */
static inline bool tokenizer_add_special(Tokenizer *t, const char *name, Error *e) {
    const size_t n = strlen(name);
    if (tokenizer_special(t, name) >= 0) return true;
    if (!n || n > TOKENIZER_TOKEN_MAX)
        return error_set(e, "special token '%.40s': has %zu bytes, expected 1 to %d", name, n, TOKENIZER_TOKEN_MAX);
    if (tokenizer_find(t, name, n) >= 0)
        return error_set(e, "special token '%s': is an ordinary token of this vocabulary", name);
    if (t->vocab >= TOKENIZER_VOCAB_MAX)
        return error_set(e, "special token '%s': the vocabulary is full at %d tokens", name, t->vocab);
    tokenizer_append(t, name, n, true);
    tokenizer_list_specials(t);
    return true;
}

/* Creates the byte tokenizer. */
static inline bool tokenizer_bytes(Tokenizer *t, Error *e) {
    static const char *const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"};
    *t = (Tokenizer){.eos = 256};
    for (int i = 0; i < 256; i++) tokenizer_append(t, (const char[]){(char)i}, 1, false);
    for (int i = 0; i < 4; i++) tokenizer_append(t, special[i], strlen(special[i]), true);
    return tokenizer_start(t, "bytes", e);
}

/* ---- encoding and decoding ------------------------------------------------------------------------------------- */

/* Appends the tokens of a piece. */
static inline void tokenizer_piece(const Tokenizer *t, const char *piece, size_t n, TokenList *out) {
    Bpe *bpe = &t->scratch->bpe;
    const int32_t id = t->whole ? tokenizer_find(t, piece, n) : -1;
    if (id >= 0) token_list_append(out, id);
    else if (t->merge_count) bpe_encode(bpe, piece, n, out);
    else {
        token_list_reserve(out, n);
        for (size_t i = 0; i < n; i++) out->ids[out->count++] = bpe->byte_id[(unsigned char)piece[i]];
    }
}

/* Encodes text without recognising special tokens. */
static inline bool tokenizer_ordinary(const Tokenizer *t, const char *text, size_t n, TokenList *out, Error *e) {
    if (!t->pattern) {
        if (n) tokenizer_piece(t, text, n, out);
        return true;
    }
    while (n) {
        const size_t valid = utf8_valid(text, n);
        for (size_t at = 0, end; at < valid; at = end) {
            if (!pretokenizer_next(&t->scratch->pieces, text, valid, at, &end, e)) return false;
            tokenizer_piece(t, text + at, end - at, out);
        }
        size_t broken = valid;
        while (broken < n && !utf8_length(text + broken, n - broken)) broken++;
        if (broken > valid) tokenizer_piece(t, text + valid, broken - valid, out);
        text += broken;
        n -= broken;
    }
    return true;
}

/* Finds the first special token in text[*at..n). Returns its id and sets *at to its position, or returns -1. */
static inline int32_t tokenizer_find_special(const Tokenizer *t, const char *text, size_t n, size_t *at) {
    for (size_t i = *at; i < n; i++) {
        if (!t->special_first[(unsigned char)text[i]]) continue;
        for (int32_t k = 0; k < t->special_count; k++) {
            size_t length;
            const char *token = tokenizer_token(t, t->specials[k], &length);
            if (length <= n - i && !memcmp(token, text + i, length)) {
                *at = i;
                return t->specials[k];
            }
        }
    }
    return -1;
}

/* Appends the ids of text[0..n), which may be any bytes. With `specials`, special tokens in the text are recognised.
 * Fails on more than 1 GiB of text, or if a pattern from a tokenizer.json exceeds the match limit. */
static inline bool tokenizer_encode(const Tokenizer *t, const char *text, size_t n, bool specials, TokenList *out,
                                    Error *e) {
    if (n > (size_t)(TOKENIZER_TEXT_MAX - 1) - (size_t)out->count)
        return error_set(e, "text of %zu bytes is too long, expected at most %d bytes and tokens in one list", n,
                         TOKENIZER_TEXT_MAX - 1);
    for (size_t begin = 0;;) {
        size_t at = begin, length;
        const int32_t id = specials ? tokenizer_find_special(t, text, n, &at) : -1;
        if (!tokenizer_ordinary(t, text + begin, (id < 0 ? n : at) - begin, out, e)) return false;
        if (id < 0) return true;
        token_list_append(out, id);
        tokenizer_token(t, id, &length);
        begin = at + length;
    }
}

/* Appends the bytes of the tokens, which may end inside a character. Special tokens are omitted unless `specials` is
 * set. An id outside the vocabulary becomes U+FFFD. */
static inline void tokenizer_decode(const Tokenizer *t, const int32_t *ids, int32_t n, bool specials, TextBuffer *out) {
    text_append(out, "", 0);
    for (int32_t i = 0; i < n; i++) {
        size_t length;
        if (ids[i] < 0 || ids[i] >= t->vocab) {
            text_string(out, "\xEF\xBF\xBD");
            continue;
        }
        const char *token = tokenizer_token(t, ids[i], &length);
        if (specials || !t->special[ids[i]]) text_append(out, token, length);
    }
}

/* ---- the blob -------------------------------------------------------------------------------------------------- */

enum { TOKENIZER_HEADER = 40 };

/* Stores the tokenizer as a blob of *n bytes in new memory. */
static inline bool tokenizer_store(const Tokenizer *t, void **blob, size_t *n, Error *e) {
    const size_t pattern = t->pattern ? strlen(t->pattern) : 0, bytes = t->start[t->vocab];
    if (bytes > INT32_MAX || pattern > INT32_MAX) return error_set(e, "tokenizer: is too large to be stored");
    const uint32_t header[8] = {1,
                                (uint32_t)t->vocab,
                                (uint32_t)t->eos,
                                t->whole ? TOKENIZER_WHOLE : 0,
                                (uint32_t)t->merge_count,
                                (uint32_t)t->special_count,
                                (uint32_t)pattern,
                                (uint32_t)bytes};
    TextBuffer b = {0};
    text_append(&b, "LLMCTOKN", 8);
    text_append(&b, (const char *)header, sizeof header);
    text_append(&b, t->pattern ? t->pattern : "", pattern);
    for (int32_t id = 0; id < t->vocab; id++) {
        const uint16_t length = (uint16_t)(t->start[id + 1] - t->start[id]);
        text_append(&b, (const char *)&length, sizeof length);
    }
    text_append(&b, t->bytes, bytes);
    for (int32_t id = 0; id < t->vocab; id++)
        if (t->special[id]) text_append(&b, (const char *)&id, sizeof id);
    text_append(&b, (const char *)t->merges, (size_t)t->merge_count * sizeof *t->merges);
    *blob = b.text;
    *n = b.length;
    return true;
}

/* Fills in the tables from the blob, whose size has been checked against the header. */
static inline bool tokenizer_load_tables(Tokenizer *t, const uint32_t header[8], const uint8_t *in, Error *e) {
    const size_t pattern = header[6], bytes = header[7];
    t->eos = (int32_t)header[2];
    t->whole = header[3] & TOKENIZER_WHOLE;
    t->merge_count = (int32_t)header[4];
    if (pattern) t->pattern = xstrndup((const char *)in, pattern);
    if (pattern && strlen(t->pattern) != pattern) return error_set(e, "tokenizer: pattern contains a NUL");
    in += pattern;
    const int32_t vocab = (int32_t)header[1];
    t->start = (uint32_t *)xcalloc((size_t)vocab + 1, sizeof *t->start);
    t->special = (uint8_t *)xcalloc((size_t)vocab, 1);
    uint64_t end = 0;
    for (int32_t id = 0; id < vocab && end <= bytes; id++, in += 2) {
        end += in[0] + 256u * in[1];
        t->start[id + 1] = (uint32_t)end;
    }
    if (end != bytes) return error_set(e, "tokenizer: the tokens' lengths do not add up to their %zu bytes", bytes);
    t->vocab = vocab;
    t->bytes = (char *)xmalloc(bytes + 1);
    memcpy(t->bytes, in, bytes);
    in += bytes;
    int64_t last = -1;
    for (uint32_t i = 0; i < header[5]; i++, in += 4) {
        uint32_t id;
        memcpy(&id, in, 4);
        if (id >= (uint32_t)vocab || (int64_t)id <= last)
            return error_set(e, "tokenizer: special token %u is out of order or outside the vocabulary of %d", id,
                             vocab);
        t->special[id] = 1;
        last = id;
    }
    t->merges = (Merge *)xcalloc((size_t)t->merge_count, sizeof *t->merges);
    memcpy(t->merges, in, (size_t)t->merge_count * sizeof *t->merges);
    return true;
}

/* Reads a blob of n bytes, from a checkpoint or a shard. */
static inline bool tokenizer_load(Tokenizer *t, const void *blob, size_t n, Error *e) {
    *t = (Tokenizer){0};
    uint32_t header[8];
    if (n < TOKENIZER_HEADER || memcmp(blob, "LLMCTOKN", 8))
        return error_set(e, "tokenizer: %zu bytes do not begin with LLMCTOKN and a header", n);
    memcpy(header, (const uint8_t *)blob + 8, sizeof header);
    if (header[0] != 1) return error_set(e, "tokenizer: version is %u, expected 1", header[0]);
    if (header[3] & ~(uint32_t)TOKENIZER_WHOLE)
        return error_set(e, "tokenizer: flags are %u, expected 0 or 1", header[3]);
    if (!header[1] || header[1] > TOKENIZER_VOCAB_MAX)
        return error_set(e, "tokenizer: vocabulary is %u, expected 1 to %d", header[1], TOKENIZER_VOCAB_MAX);
    const uint64_t needed = (uint64_t)TOKENIZER_HEADER + header[6] + 2ull * header[1] + header[7] + 4ull * header[5] +
                            sizeof(Merge) * (uint64_t)header[4];
    if (needed != n)
        return error_set(e, "tokenizer: has %zu bytes, its header needs %llu", n, (unsigned long long)needed);
    if (tokenizer_load_tables(t, header, (const uint8_t *)blob + TOKENIZER_HEADER, e) &&
        tokenizer_start(t, "tokenizer", e))
        return true;
    tokenizer_free(t);
    return false;
}

/* XXH3-64 of the blob; tokenizers with equal hashes encode identically. */
static inline uint64_t tokenizer_hash(const Tokenizer *t) {
    void *blob;
    size_t n;
    if (!tokenizer_store(t, &blob, &n, NULL)) return 0;
    const uint64_t hash = XXH3_64bits(blob, n);
    free(blob);
    return hash;
}

#endif
