/* tokens.h - llm.c's token shards: documents as token ids, for training on plain text and for perplexity.
 *
 *   header   1024 bytes, int32[256]: [0] magic 20240520, [1] version 1, [2] number of tokens n (< 2^31), rest 0
 *   tokens   n uint16
 *
 * The file must end after the tokens, as llm.c's loader requires: nothing is appended, and a file of any other length
 * is rejected. Documents begin with the end-of-text token. The format has no checksum; zstd adds one.
 *
 *     TokenShard t;
 *     if (!tokens_open(&t, "tiny_shakespeare_val.bin", model_vocab, e)) return false;
 *     for (int64_t i = 0; i < t.count; i++) use(t.tokens[i]);
 *     tokens_close(&t);
 */
#ifndef LLMC_RECORDS_TOKENS_H
#define LLMC_RECORDS_TOKENS_H

#include "../base/error.h" /* error_set, Error */
#include "../base/io.h"    /* MAGIC_TOKENS, Reader, writer_write, Writer, ... */

enum { TOKENS_VERSION = 1, TOKENS_HEADER = 256 };

typedef struct TokenShard {
    uint16_t *tokens;
    int64_t count;
} TokenShard;

static inline void tokens_close(TokenShard *t) {
    free(t->tokens);
    *t = (TokenShard){0};
}

/* Reads a token shard from an open reader, up to its end. */
static inline bool tokens_read(TokenShard *t, Reader *r, int32_t vocab_limit, Error *e) {
    int32_t header[TOKENS_HEADER];
    *t = (TokenShard){0};
    if (!reader_read(r, header, sizeof header, "header", e) || !magic_check(r->name, header[0], MAGIC_TOKENS, e))
        return false;
    if (header[1] != TOKENS_VERSION)
        return error_set(e, "%s: token shard of version %d, expected %d", r->name, (int)header[1], TOKENS_VERSION);
    if (header[2] < 0)
        return error_set(e, "%s: number of tokens is %d, expected 0 to 2147483647", r->name, (int)header[2]);
    const int64_t count = header[2], left = reader_left(r);
    if (left >= 0 && left != 2 * count)
        return error_set(e, "%s: file ends at byte %lld, header (%lld tokens) needs %lld", r->name,
                         (long long)(sizeof header + (size_t)left), (long long)count,
                         (long long)(sizeof header + 2 * (size_t)count));
    uint16_t *tokens = (uint16_t *)reader_blob(r, 2 * (uint64_t)count, "tokens", e);
    *t = (TokenShard){tokens, count};
    bool ok = tokens && reader_end(r, e);
    const int32_t limit = vocab_limit > 0 ? vocab_limit : INT32_MAX;
    for (int64_t i = 0; ok && i < count; i++)
        if (tokens[i] >= limit)
            ok = error_set(e, "%s: token %lld is %d, expected below the vocabulary of %d", r->name, (long long)i,
                           (int)tokens[i], (int)vocab_limit);
    if (!ok) tokens_close(t);
    return ok;
}

/* Reads the token shard `path` ("-": standard input; may be zstd). Ids must be below vocab_limit, unless that is 0. */
static inline bool tokens_open(TokenShard *t, const char *path, int32_t vocab_limit, Error *e) {
    Reader r;
    *t = (TokenShard){0};
    if (!reader_open(&r, path, e)) return false;
    const bool ok = tokens_read(t, &r, vocab_limit, e);
    reader_close(&r);
    return ok;
}

/* Writes n tokens as a shard in llm.c's format. */
static inline bool tokens_write(const char *path, const uint16_t *tokens, size_t n, Error *e) {
    if (n > INT32_MAX) return error_set(e, "%s: %zu tokens, expected at most 2147483647 in a token shard", path, n);
    const int32_t header[TOKENS_HEADER] = {MAGIC_TOKENS, TOKENS_VERSION, (int32_t)n};
    Writer w;
    if (!writer_open(&w, path, e)) return false;
    if (writer_write(&w, header, sizeof header, e) && writer_write(&w, tokens, n * sizeof *tokens, e))
        return writer_commit(&w, e);
    writer_abort(&w);
    return false;
}

#endif
