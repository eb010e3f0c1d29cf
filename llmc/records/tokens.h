/* tokens.h - llm.c's token shards: documents as token ids, for training on plain text and for perplexity.
 *
 *   header   1024 bytes, int32[256]:
 *              [0] magic and [1] version: 20240520 and 1 with ids of 2 bytes, 20240801 and 7 with ids of 4 bytes
 *              [2] number of tokens n (< 2^31)
 *              [3] vocabulary, or 0 if the file does not say; then the next three are 0 as well
 *              [4] id of the token that begins a document   [5] 0
 *              [6..7] XXH3-64 of the tokenizer's blob (tokenizer_store()), as uint64;   rest 0
 *   tokens   n uint16 or uint32
 *
 * llm.c reads only the first three numbers and requires that the file ends after the tokens: nothing is appended, and a
 * file of any other length is rejected. Documents begin with the end-of-text token (or, if the tokenizer adds one, with
 * its beginning-of-text token). The format has no checksum; zstd adds one.
 *
 * An uncompressed file is mapped (map.h): its pages are given back after it has been checked, and read again where they
 * are used. The ids of a mapped file are not trusted again: token_at() limits them to the highest id that was checked.
 *
 *     TokenShard t;
 *     if (!tokens_open(&t, "tiny_shakespeare_val.bin", model_vocab, e)) return false;
 *     for (int64_t i = 0; i < t.count; i++) use(token_at(&t, i));
 *     tokens_close(&t);
 */
#ifndef LLMC_RECORDS_TOKENS_H
#define LLMC_RECORDS_TOKENS_H

#include "../base/error.h"     /* Error, error_set, checked_object, xstrdup */
#include "../base/file_kind.h" /* MAGIC_TOKENS_WIDE, MAGIC_TOKENS */
#include "../base/io.h"        /* Reader, writer_write, IO_PIECE, XXH3_state_t, ... */
#include "../base/map.h"       /* Mapping, mapping_forget, mapping_free */

enum { TOKENS_VERSION = 1, TOKENS_WIDE_VERSION = 7, TOKENS_HEADER = 256, TOKENS_PIECE = 4096 };

/* What the ids mean. */
typedef struct TokenMeaning {
    int32_t vocab;      /* 0: the file does not say */
    int32_t start;      /* the token that begins a document */
    uint64_t tokenizer; /* hash of the tokenizer's blob */
} TokenMeaning;

typedef struct TokenShard {
    char *name;         /* for messages */
    const uint8_t *ids; /* (count) of id_bytes each */
    int32_t id_bytes;   /* 2 or 4 */
    int64_t count;
    int32_t highest; /* the highest id, -1 in an empty shard */
    uint64_t hash;   /* XXH3-64 of the ids */
    TokenMeaning meaning;
    Mapping *map; /* the file that ids is in, or NULL */
} TokenShard;

static inline void tokens_close(TokenShard *t) {
    free(t->name);
    if (t->map) mapping_free(t->map);
    else free((void *)t->ids);
    *t = (TokenShard){0};
}

static inline uint32_t token_raw(const TokenShard *t, int64_t i) {
    uint16_t narrow;
    uint32_t wide;
    if (t->id_bytes == 4) {
        memcpy(&wide, t->ids + 4 * i, 4);
        return wide;
    }
    memcpy(&narrow, t->ids + 2 * i, 2);
    return narrow;
}

static inline int32_t token_at(const TokenShard *t, int64_t i) {
    const uint32_t id = token_raw(t, i);
    return id > (uint32_t)t->highest ? t->highest : (int32_t)id;
}

static inline bool tokens_magic(int32_t magic) { return magic == MAGIC_TOKENS || magic == MAGIC_TOKENS_WIDE; }

static inline bool tokens_header(TokenShard *t, Reader *r, Error *e) {
    int32_t h[TOKENS_HEADER];
    if (!reader_header(r, h, sizeof h, MAGIC_TOKENS, MAGIC_TOKENS_WIDE, e)) return false;
    const bool wide = h[0] == MAGIC_TOKENS_WIDE;
    const int32_t version = wide ? TOKENS_WIDE_VERSION : TOKENS_VERSION;
    if (h[1] != version)
        return error_set(e, "%s: token shard of version %d, expected %d", r->name, (int)h[1], (int)version);
    if (h[2] < 0) return error_set(e, "%s: number of tokens is %d, expected 0 to 2147483647", r->name, (int)h[2]);
    if (h[3] < 0 || (h[3] && (h[4] < 0 || h[4] >= h[3])))
        return error_set(
            e, "%s: vocabulary is %d and documents begin with token %d, expected a token below the vocabulary", r->name,
            (int)h[3], (int)h[4]);
    t->id_bytes = wide ? 4 : 2;
    t->count = h[2];
    if (h[3]) {
        t->meaning = (TokenMeaning){.vocab = h[3], .start = h[4]};
        memcpy(&t->meaning.tokenizer, h + 6, 8);
    }
    const int64_t left = reader_left(r);
    if (left >= 0 && left != t->id_bytes * t->count)
        return error_set(e, "%s: file ends at byte %lld, header (%lld tokens) needs %lld", r->name,
                         (long long)(sizeof h + (size_t)left), (long long)t->count,
                         (long long)(sizeof h + (size_t)t->id_bytes * (size_t)t->count));
    return true;
}

/* Checks the ids, piece by piece, and gives their pages back. */
static inline bool tokens_check(TokenShard *t, int32_t limit, Error *e) {
    XXH3_state_t *hash = (XXH3_state_t *)checked_object(XXH3_createState(), "the state of a hash");
    XXH3_64bits_reset(hash);
    int64_t bad = -1;
    for (int64_t at = 0, n; at < t->count && bad < 0; at += n) {
        n = t->count - at < IO_PIECE ? t->count - at : IO_PIECE;
        const uint8_t *piece = t->ids + (size_t)at * (size_t)t->id_bytes;
        XXH3_64bits_update(hash, piece, (size_t)n * (size_t)t->id_bytes);
        for (int64_t i = at; i < at + n && bad < 0; i++) {
            const uint32_t id = token_raw(t, i);
            if (id >= (uint32_t)limit) bad = i;
            else if ((int32_t)id > t->highest) t->highest = (int32_t)id;
        }
        mapping_forget(t->map, piece, (size_t)n * (size_t)t->id_bytes);
    }
    t->hash = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    if (bad < 0) return true;
    return error_set(e, "%s: token %lld is %u, expected below the vocabulary of %d", t->name, (long long)bad,
                     (unsigned)token_raw(t, bad), (int)limit);
}

static inline bool tokens_body(TokenShard *t, Reader *r, int32_t vocab_limit, Error *e) {
    if (!tokens_header(t, r, e)) return false;
    const uint64_t bytes = (uint64_t)t->id_bytes * (uint64_t)t->count;
    t->map = reader_map(r);
    t->ids = t->map ? reader_lend(r, bytes, "tokens", e) : (const uint8_t *)reader_blob(r, bytes, "tokens", e);
    if (!t->ids || !reader_end(r, e)) return false;
    int32_t limit = vocab_limit > 0 ? vocab_limit : INT32_MAX;
    if (t->meaning.vocab && t->meaning.vocab < limit) limit = t->meaning.vocab;
    return tokens_check(t, limit, e);
}

/* Reads a token shard from an open reader, up to its end. */
static inline bool tokens_read(TokenShard *t, Reader *r, int32_t vocab_limit, Error *e) {
    *t = (TokenShard){.name = xstrdup(r->name), .highest = -1};
    if (tokens_body(t, r, vocab_limit, e)) return true;
    tokens_close(t);
    return false;
}

/* Opens the token shard `path` ("-": standard input; may be zstd). Ids must be below vocab_limit, unless that is 0. */
static inline bool tokens_open(TokenShard *t, const char *path, int32_t vocab_limit, Error *e) {
    Reader r;
    *t = (TokenShard){0};
    if (!reader_open(&r, path, e)) return false;
    const bool ok = tokens_read(t, &r, vocab_limit, e);
    reader_close(&r);
    return ok;
}

/* Writes n tokens as a shard in llm.c's format, with ids of 4 bytes if the vocabulary has more than 65536 tokens. The
 * ids are below the vocabulary, or below 65536 if that is 0. */
static inline bool tokens_write(const char *path, const int32_t *tokens, size_t n, TokenMeaning meaning, Error *e) {
    if (n > INT32_MAX) return error_set(e, "%s: %zu tokens, expected at most 2147483647 in a token shard", path, n);
    const bool wide = meaning.vocab > 65536;
    int32_t header[TOKENS_HEADER] = {wide ? MAGIC_TOKENS_WIDE : MAGIC_TOKENS,
                                     wide ? TOKENS_WIDE_VERSION : TOKENS_VERSION, (int32_t)n, meaning.vocab,
                                     meaning.start};
    Writer w;
    if (!writer_open(&w, path, e)) return false;
    memcpy(header + 6, &meaning.tokenizer, 8);
    bool ok = writer_write(&w, header, sizeof header, e);
    uint16_t narrow[TOKENS_PIECE];
    for (size_t at = 0, count; ok && at < n; at += count) {
        count = n - at < TOKENS_PIECE ? n - at : TOKENS_PIECE;
        for (size_t i = 0; !wide && i < count; i++) narrow[i] = (uint16_t)tokens[at + i];
        ok = wide ? writer_write(&w, tokens + at, 4 * count, e) : writer_write(&w, narrow, 2 * count, e);
    }
    if (ok) return writer_commit(&w, e);
    writer_abort(&w);
    return false;
}

#endif
