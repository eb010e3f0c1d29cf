/* tokenizer.h - tokenizers: byte-level BPE (GPT-2, Llama 3, Qwen), SentencePiece-like BPE (Llama 2, Mistral, Gemma),
 * and one token per byte.
 *
 * Encoding cuts added tokens out of the text and normalises the rest. Byte-level BPE splits it into pieces with a
 * pattern (pretokenize.h), turns each piece into the tokens of its bytes, and merges these (bpe.h). SentencePiece-like
 * BPE may put a space before the text and merges the tokens of its characters, without splitting it. The ids equal
 * those of tiktoken and of Hugging Face's tokenizers for every string that those accept.
 *
 * Added tokens, such as <|endoftext|> or <think>, are recognised in the text as a whole:
 *
 *   token                                in text               in text with TOKENIZER_SPECIALS   decoded
 *   special (<|endoftext|>, <s>)         ordinary characters   the token                         on request
 *   other added (<think>, <tool_call>)   the token             the token                         yes
 *
 * Special tokens are therefore recognised only if the caller requests it, so user input cannot end a turn. The leftmost
 * added token is recognised first; if several begin at the same place, the longest one. The names of special tokens in
 * ordinary text are passed over as `tokenizers` does with encode_special_tokens, except that no merges and no
 * ignore_merges turn their characters into the special token.
 *
 * Invalid UTF-8 is neither rejected nor replaced. For byte-level BPE a run of bytes outside well-formed characters is a
 * separate piece, and the text before it is split as if it ended there; otherwise each such byte is its own token.
 * (tiktoken accepts only well-formed strings; it and `tokenizers` replace invalid bytes with U+FFFD.) decode(encode(x))
 * is x for any bytes x, including NULs, with these exceptions:
 *
 *   - A tokenizer with normalisation form C gives NFC(x), see nfc.h.
 *   - A SentencePiece-like tokenizer gives x with U+2581 replaced by a space, since it writes spaces that way. If it
 *     uses Metaspace, x loses one leading space; if its normaliser puts a space before each part of the text, one comes
 *     after each added token. Without tokens for bytes, unknown characters are lost.
 *   - Bytes without a token are lost or become the unknown token. SmolLM2 has none for some control characters and for
 *     0xF1 and 0xF2, with which only unassigned characters begin, as well as for some bytes that UTF-8 does not use.
 *   - White space after an added token with `rstrip`, or before one with `lstrip`, is omitted.
 *
 * Tokens are stored as the bytes that they decode to. A SentencePiece-like tokenizer whose decoder strips a space omits
 * the first byte of a text if that is a space; tokenizer_decode_more() decodes text in parts.
 *
 * The byte tokenizer, for models trained from scratch: ids 0 to 255 are the bytes, followed by <|endoftext|> 256,
 * <|im_start|> 257, <|im_end|> 258 and <|pad|> 259.
 *
 * Blob format in checkpoints and shards, little-endian; equal tokenizers have equal blobs:
 *
 *   0   char[8]    "LLMCTOKN"
 *   8   uint32[14] version 2, vocab V, flags (TOKENIZER_...), end-of-text id, bos id, unknown id (2^32-1: none), ends
 *                  E, merges M, added tokens A, bytes P of the pattern, bytes B of all tokens, bytes C of the added
 *                  tokens' names, 0, 0
 *   64  pattern    P bytes of UTF-8; P = 0: text is not split
 *       ends       uint32[E]: tokens that end a completion
 *       lengths    uint16[V], 0 for an id without a token
 *       kinds      uint8[V]: TOKEN_BYTE, TOKEN_APART
 *       tokens     B bytes: the bytes of all tokens, concatenated
 *       added      {uint32 id, uint16 flags (ADDED_...), uint16 bytes of the name}[A], ascending ids
 *       names      C bytes: the texts that the added tokens are recognised by, concatenated
 *       merges     {uint32 left, right, merged, rank}[M], ascending ranks; merged is left followed by right
 *
 *     Tokenizer t;
 *     TokenList ids = {0};
 *     if (!tokenizer_open(&t, "gpt2/vocab.json:gpt2/merges.txt", e)) return false;      // tokenizer_files.h
 *     if (!tokenizer_encode(&t, text, strlen(text), 0, &ids, e)) return false;
 *     tokenizer_decode(&t, ids.ids, ids.count, true, &buffer);
 *     tokenizer_free(&t);
 *
 * Because of a cache, a tokenizer may encode in only one thread at a time; decoding has no such limit.
 * tokenizer_share() makes a tokenizer for another thread, and after tokenizer_use_threads() long texts are encoded by
 * several threads.
 */
#ifndef LLMC_TEXT_TOKENIZER_H
#define LLMC_TEXT_TOKENIZER_H

#include "../base/error.h" /* error_set, Error, xcalloc, xrealloc, ... */
#include "../base/io.h"    /* XXH3_64bits */
#include "../base/text.h"  /* text_append, TokenList, TextBuffer, utf8_length, ... */
#include "bpe.h"           /* bpe_read, Bpe, Merge, bpe_encode, ... */
#include "nfc.h"           /* Nfc, nfc_free, nfc_append, nfc_quick */
#include "pretokenize.h"   /* pretokenizer_fresh, Pretokenizer, pretokenizer_unshare, pretokenizer_close, ... */
#include <omp.h>
#include <utf8proc.h>

enum {
    TOKENIZER_VOCAB_MAX = (1 << 22) - 128, /* the same limit as in config.h */
    TOKENIZER_TOKEN_MAX = 65535,           /* maximum bytes of a token */
    TOKENIZER_NAME_MAX = 1024,             /* maximum bytes of an added token's name */
    TOKENIZER_TEXT_MAX = 1 << 30,          /* maximum bytes of one call of the encoder */
    TOKENIZER_ENDS_MAX = 8,
    TOKENIZER_CHUNK = 1 << 17, /* bytes of a long text that one thread encodes at a time */
    TOKENIZER_PLACES = 128,
};

/* Flags of a tokenizer, in its blob. Those after TOKENIZER_CHARACTERS need that one. */
enum {
    TOKENIZER_WHOLE = 1,      /* a piece that is a token is encoded as that token, without merges (ignore_merges) */
    TOKENIZER_NFC = 2,        /* text is normalised to form C */
    TOKENIZER_ADD_BOS = 4,    /* a document begins with `bos` */
    TOKENIZER_CHARACTERS = 8, /* SentencePiece-like: tokens of characters, not of bytes */
    TOKENIZER_PREPEND = 16,   /* normaliser: a space before each part of the text between added tokens */
    TOKENIZER_REPLACE = 32,   /* normaliser: U+2581 is a space; else this is done after the search for added tokens */
    TOKENIZER_PREFIX = 64,    /* Metaspace: a space before each part that begins with none ... */
    TOKENIZER_PREFIX_FIRST = 128, /* ... only before the first part, if the text does not begin with an added token */
    TOKENIZER_SPLIT = 256,        /* Metaspace: a piece ends before each space */
    TOKENIZER_FUSE = 512,         /* adjacent unknown characters are one token */
    TOKENIZER_STRIP = 1024,       /* decoding omits a space at the start */
    TOKENIZER_FLAGS = 2047,
};

/* Kinds of tokens. */
enum {
    TOKEN_BYTE = 1,  /* SentencePiece-like: <0x0A> and the like, a byte of a character without a token */
    TOKEN_APART = 2, /* not made from characters or bytes: an added token that is not also an ordinary one */
};

/* Flags of added tokens. */
enum {
    ADDED_SPECIAL = 1,
    ADDED_RSTRIP = 2,       /* white space after it belongs to it */
    ADDED_NORMALIZED = 4,   /* searched for in normalised text, by its normalised name */
    ADDED_LSTRIP = 8,       /* white space before it belongs to it */
    ADDED_SINGLE_WORD = 16, /* recognised only if no letter, digit or `_` is next to it */
    ADDED_FLAGS = 31,
};

/* How a text is encoded: flags of tokenizer_encode(). */
enum {
    TOKENIZER_SPECIALS = 1,  /* special tokens are recognised too */
    TOKENIZER_CONTINUES = 2, /* the ids already in the list are the text before this one */
    TOKENIZER_DOCUMENT = 4,  /* the text is a document, which begins with `bos` if the tokenizer says so */
};

typedef struct TokenizerAdded {
    int32_t id;
    uint32_t flags;
    char *name; /* NUL-terminated, without NULs inside */
} TokenizerAdded;

/* A name to search for. */
typedef struct TokenizerName {
    const char *text; /* in TokenizerNames.text, or as an offset while that grows */
    uint32_t length, flags;
    int32_t id;
} TokenizerName;

/* Names in the order of their bytes. */
typedef struct TokenizerNames {
    TokenizerName *names;
    int32_t count, ordinary; /* number of those that are not special */
    int32_t first[257];      /* names that begin with byte b are first[b] .. first[b + 1] */
    char *text;
} TokenizerNames;

typedef struct Tokenizer {
    int32_t vocab;                               /* ids are 0 .. vocab-1 */
    uint32_t flags;                              /* TOKENIZER_WHOLE ... */
    int32_t eos;                                 /* the end of text */
    int32_t ends[TOKENIZER_ENDS_MAX], end_count; /* tokens that end a completion; set by tokenizer_set_ends() */
    int32_t bos;                                 /* -1: none */
    int32_t unknown;                             /* token of bytes and characters without a token; -1: none */
    bool add_bos;                                /* TOKENIZER_ADD_BOS: a document begins with bos */

    char *bytes;           /* bytes of all tokens */
    uint32_t *start;       /* (vocab + 1) token i is bytes[start[i] .. start[i+1]) */
    uint8_t *special;      /* (vocab) 1 for special tokens */
    uint8_t *kind;         /* (vocab) TOKEN_BYTE ... */
    TokenizerAdded *added; /* (added_count) ascending ids; special tokens and others */
    int32_t added_count, special_count;
    TokenizerNames raw, normalized; /* the added tokens, as they are searched for */
    Merge *merges;                  /* (merge_count) ascending ranks */
    int32_t merge_count;
    char *pattern;  /* NULL: text is one piece */
    int32_t *index; /* TOKENIZER_WHOLE: open-addressed table of ids by bytes, -1 empty */
    uint32_t index_mask;
    struct TokenizerScratch {
        Bpe bpe;
        Pretokenizer pieces;
        Nfc nfc;
        TextBuffer normal, spaced;
        struct TokenizerScratch **more; /* (threads - 1) those of the other threads that encode a long text */
        int threads;                    /* 0: one */
    } * scratch;                        /* changed by encoding; NULL before tokenizer_start() */
} Tokenizer;

/* ---- building -------------------------------------------------------------------------------------------------- */

static inline const char *tokenizer_token(const Tokenizer *t, int32_t id, size_t *n) {
    *n = t->start[id + 1] - t->start[id];
    return t->bytes + t->start[id];
}

static inline void tokenizer_free_names(TokenizerNames *n) {
    free(n->names);
    free(n->text);
    *n = (TokenizerNames){0};
}

/* Frees the memory of a thread, but not the tables. */
static inline void tokenizer_scratch_free(struct TokenizerScratch *s) {
    for (int i = 0; i + 1 < s->threads; i++) {
        bpe_unshare(&s->more[i]->bpe);
        pretokenizer_unshare(&s->more[i]->pieces);
        tokenizer_scratch_free(s->more[i]);
    }
    free(s->more);
    nfc_free(&s->nfc);
    text_free(&s->normal);
    text_free(&s->spaced);
    free(s);
}

static inline void tokenizer_free(Tokenizer *t) {
    if (t->scratch) {
        bpe_free(&t->scratch->bpe);
        pretokenizer_close(&t->scratch->pieces);
        tokenizer_scratch_free(t->scratch);
    }
    for (int32_t i = 0; i < t->added_count; i++) free(t->added[i].name);
    tokenizer_free_names(&t->raw);
    tokenizer_free_names(&t->normalized);
    free(t->bytes);
    free(t->start);
    free(t->special);
    free(t->kind);
    free(t->added);
    free(t->merges);
    free(t->pattern);
    free(t->index);
    *t = (Tokenizer){0};
}

/* Returns the added token `name`, or NULL. */
static inline TokenizerAdded *tokenizer_added(const Tokenizer *t, const char *name) {
    for (int32_t i = 0; i < t->added_count; i++)
        if (!strcmp(t->added[i].name, name)) return &t->added[i];
    return NULL;
}

/* Returns the added token `id`, or NULL. */
static inline TokenizerAdded *tokenizer_added_at(const Tokenizer *t, int32_t id) {
    int32_t low = 0, high = t->added_count;
    while (low < high) {
        const int32_t middle = low + (high - low) / 2;
        if (t->added[middle].id < id) low = middle + 1;
        else high = middle;
    }
    return low < t->added_count && t->added[low].id == id ? &t->added[low] : NULL;
}

/* Returns the id of the added token `name`, special or not, or -1. */
static inline int32_t tokenizer_special(const Tokenizer *t, const char *name) {
    const TokenizerAdded *added = tokenizer_added(t, name);
    return added ? added->id : -1;
}

/* Whether text is made into this token other than by its name. */
static inline bool tokenizer_ordinary(const Tokenizer *t, int32_t id) {
    return !t->special[id] && !t->kind[id] && t->start[id + 1] > t->start[id];
}

/* Returns the id of the ordinary token with these bytes, or -1. Searches all tokens unless the tokenizer has an
 * index. */
static inline int32_t tokenizer_find(const Tokenizer *t, const char *bytes, size_t length) {
    size_t n;
    if (!t->index) {
        for (int32_t id = 0; id < t->vocab; id++)
            if (t->start[id + 1] - t->start[id] == length && tokenizer_ordinary(t, id) &&
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
        if (!tokenizer_ordinary(t, id) || tokenizer_find(t, token, n) >= 0) continue;
        uint32_t i = (uint32_t)XXH3_64bits(token, n);
        while (t->index[i & t->index_mask] >= 0) i++;
        t->index[i & t->index_mask] = id;
    }
}

/* Appends text[0..n) with U+2581, SentencePiece's sign for a space, as spaces. */
static inline void tokenizer_spaces(const char *text, size_t n, TextBuffer *out) {
    const char *sign;
    text_reserve(out, n);
    while (n && (sign = (const char *)memmem(text, n, "\xE2\x96\x81", 3))) {
        text_append(out, text, (size_t)(sign - text));
        text_append(out, " ", 1);
        n -= (size_t)(sign - text) + 3;
        text = sign + 3;
    }
    text_append(out, text, n);
}

/* Whether the normaliser of a SentencePiece-like tokenizer changes this text. */
static inline bool tokenizer_spaced(uint32_t replace, const char *text, size_t n) {
    return replace && memmem(text, n, "\xE2\x96\x81", 3);
}

/* Applies the normaliser. Returns the text itself, or one in *out. inside: no space is put before it. */
static inline const char *tokenizer_normalize(const Tokenizer *t, bool inside, const char *text, size_t *n,
                                              Nfc *scratch, TextBuffer *out) {
    if (t->flags & TOKENIZER_NFC) {
        if (nfc_quick(text, *n)) return text;
        text_clear(out);
        nfc_append(scratch, text, *n, out);
    } else {
        const bool space = t->flags & TOKENIZER_PREPEND && !inside;
        if (!*n || (!space && !tokenizer_spaced(t->flags & TOKENIZER_REPLACE, text, *n))) return text;
        text_clear(out);
        if (space) text_append(out, " ", 1);
        if (t->flags & TOKENIZER_REPLACE) tokenizer_spaces(text, *n, out);
        else text_append(out, text, *n);
    }
    *n = out->length;
    return out->text;
}

static inline int tokenizer_compare_names(const void *a, const void *b) {
    const TokenizerName *x = (const TokenizerName *)a, *y = (const TokenizerName *)b;
    const uint32_t both = x->length < y->length ? x->length : y->length;
    const int order = memcmp(x->text, y->text, both);
    if (order) return order;
    if (x->length != y->length) return x->length < y->length ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Lists the added tokens that are searched for in raw or in normalised text. */
static inline void tokenizer_list_names(const Tokenizer *t, bool normalized, TokenizerNames *out) {
    Nfc nfc = {0};
    TextBuffer all = {0}, one = {0};
    tokenizer_free_names(out);
    out->names = (TokenizerName *)xcalloc((size_t)t->added_count, sizeof *out->names);
    size_t *at = (size_t *)xcalloc((size_t)t->added_count, sizeof *at);
    for (int32_t i = 0; i < t->added_count; i++) {
        const TokenizerAdded *a = &t->added[i];
        if (!(a->flags & ADDED_NORMALIZED) != !normalized) continue;
        size_t n = strlen(a->name);
        const char *text = normalized ? tokenizer_normalize(t, false, a->name, &n, &nfc, &one) : a->name;
        at[out->count] = all.length;
        out->names[out->count++] = (TokenizerName){.length = (uint32_t)n, .flags = a->flags, .id = a->id};
        out->ordinary += !(a->flags & ADDED_SPECIAL);
        text_append(&all, text, n);
    }
    for (int32_t i = 0; i < out->count; i++) out->names[i].text = all.text + at[i];
    if (out->count) qsort(out->names, (size_t)out->count, sizeof *out->names, tokenizer_compare_names);
    for (int32_t i = 0; i < out->count; i++) out->first[(unsigned char)*out->names[i].text + 1]++;
    for (int b = 0; b < 256; b++) out->first[b + 1] += out->first[b];
    out->text = all.text;
    text_free(&one);
    nfc_free(&nfc);
    free(at);
}

/* Prepares the search for the added tokens. */
static inline void tokenizer_list_added(Tokenizer *t) {
    t->special_count = 0;
    for (int32_t i = 0; i < t->added_count; i++) {
        const bool special = t->added[i].flags & ADDED_SPECIAL;
        t->special[t->added[i].id] = special;
        t->special_count += special;
    }
    tokenizer_list_names(t, false, &t->raw);
    tokenizer_list_names(t, true, &t->normalized);
}

/* Finds the tokens of bytes. */
static inline bool tokenizer_start_bytes(const Tokenizer *t, Bpe *b, const char *name, Error *e) {
    size_t n;
    for (int i = 0; i < 256; i++) b->byte_id[i] = -1;
    for (int32_t id = 0; id < t->vocab; id++) {
        const char *token = tokenizer_token(t, id, &n);
        if (n != 1 || !tokenizer_ordinary(t, id)) continue;
        int32_t *byte = &b->byte_id[(unsigned char)*token];
        if (*byte >= 0)
            return error_set(e, "%s: tokens %d and %d are both byte 0x%02X", name, *byte, id, (unsigned char)*token);
        *byte = id;
    }
    for (int i = 0; i < 256; i++) {
        if (b->byte_id[i] < 0 && (i == '\n' || (i >= ' ' && i <= '~')))
            return error_set(e, "%s: byte 0x%02X has no token, expected one for each printable character", name, i);
        if (b->byte_id[i] < 0) b->byte_id[i] = t->unknown;
    }
    return true;
}

/* Finds the tokens of characters, and those of bytes for other characters. */
static inline bool tokenizer_start_characters(const Tokenizer *t, Bpe *b, const char *name, Error *e) {
    size_t n;
    int bytes = 0;
    bpe_start_characters(b, t->vocab);
    for (int32_t id = 0; id < t->vocab; id++) {
        const char *token = tokenizer_token(t, id, &n);
        if (t->kind[id] & TOKEN_BYTE && !t->special[id]) {
            if (n != 1 || b->fallback_id[(unsigned char)*token] >= 0)
                return error_set(e, "%s: token %d is not the only token of one byte", name, id);
            b->fallback_id[(unsigned char)*token] = id;
            bytes++;
        } else if (n && n <= 4 && tokenizer_ordinary(t, id) && utf8_length(token, n) == (int)n &&
                   bpe_character(b, utf8_decode(token, (int)n)) < 0)
            bpe_add_character(b, utf8_decode(token, (int)n), id);
    }
    b->unknown = t->unknown;
    if (bytes && bytes < 256)
        return error_set(e, "%s: has tokens for %d of the 256 bytes, expected all or none", name, bytes);
    if (!bytes && t->unknown < 0) return error_set(e, "%s: has neither tokens for bytes nor an unknown token", name);
    if (b->byte_id[' '] < 0) return error_set(e, "%s: has no token for a space (U+2581)", name);
    for (int32_t i = 0; i < t->merge_count; i++) {
        size_t left, right;
        uint32_t before = 0, after;
        const char *l = tokenizer_token(t, t->merges[i].left, &left),
                   *r = tokenizer_token(t, t->merges[i].right, &right);
        for (size_t at = 0; at < left;) at += bpe_read(l + at, left - at, &before);
        bpe_read(r, right, &after);
        bpe_add_join(b, before, after);
    }
    return true;
}

static inline bool tokenizer_check_merges(const Tokenizer *t, const char *name, Error *e) {
    for (int32_t i = 0; i < t->merge_count; i++) {
        const Merge m = t->merges[i];
        size_t left, right, n;
        if (m.left < 0 || m.left >= t->vocab || m.right < 0 || m.right >= t->vocab || m.merged < 0 ||
            m.merged >= t->vocab)
            return error_set(e, "%s: merge %d has a token id outside the vocabulary of %d", name, i, t->vocab);
        if (m.rank < 0 || (i && m.rank < t->merges[i - 1].rank))
            return error_set(e, "%s: merge %d has rank %d, expected ascending ranks", name, i, m.rank);
        const char *a = tokenizer_token(t, m.left, &left), *b = tokenizer_token(t, m.right, &right),
                   *c = tokenizer_token(t, m.merged, &n);
        if (!left || !right || n != left + right || memcmp(c, a, left) || memcmp(c + left, b, right))
            return error_set(e, "%s: merge %d: token %d is not token %d followed by token %d", name, i, m.merged,
                             m.left, m.right);
        if ((t->kind[m.left] | t->kind[m.right] | t->kind[m.merged]) & TOKEN_BYTE || t->special[m.merged])
            return error_set(e, "%s: merge %d makes a special token or one from the token of a byte", name, i);
    }
    return true;
}

static inline bool tokenizer_check(const Tokenizer *t, const char *name, Error *e) {
    if (t->eos < 0 || t->eos >= t->vocab)
        return error_set(e, "%s: end of text is token %d, expected one below %d", name, t->eos, t->vocab);
    if (t->bos < -1 || t->bos >= t->vocab || (t->flags & TOKENIZER_ADD_BOS && t->bos < 0))
        return error_set(e, "%s: beginning of text is token %d, expected one below %d", name, t->bos, t->vocab);
    if (t->unknown < -1 || t->unknown >= t->vocab)
        return error_set(e, "%s: unknown token is %d, expected one below %d", name, t->unknown, t->vocab);
    if (!(t->flags & TOKENIZER_CHARACTERS) ? t->flags >= TOKENIZER_CHARACTERS
                                           : (t->flags & TOKENIZER_NFC) || t->pattern)
        return error_set(e, "%s: flags %u do not go together", name, t->flags);
    return true;
}

/* Checks a tokenizer whose tables are filled in and prepares it for encoding. Error messages begin with `name`. */
static inline bool tokenizer_start(Tokenizer *t, const char *name, Error *e) {
    struct TokenizerScratch *s = t->scratch = (struct TokenizerScratch *)xcalloc(1, sizeof *s);
    const bool characters = t->flags & TOKENIZER_CHARACTERS;
    t->add_bos = t->flags & TOKENIZER_ADD_BOS;
    if (!t->end_count) t->ends[t->end_count++] = t->eos;
    if (!tokenizer_check(t, name, e)) return false;
    tokenizer_list_added(t);
    if (!tokenizer_check_merges(t, name, e) ||
        !(characters ? tokenizer_start_characters(t, &s->bpe, name, e) : tokenizer_start_bytes(t, &s->bpe, name, e)))
        return false;
    if (t->flags & TOKENIZER_WHOLE && !t->index) tokenizer_start_index(t);
    if (t->merge_count || characters) bpe_start(&s->bpe, t->merges, t->merge_count);
    return !t->pattern || pretokenizer_open(&s->pieces, t->pattern, e);
}

/* Appends a token of n bytes, with the next id. */
static inline void tokenizer_append(Tokenizer *t, const char *token, size_t n) {
    const uint32_t at = t->vocab ? t->start[t->vocab] : 0;
    t->bytes = (char *)xrealloc(t->bytes, at + n + 1, 1);
    t->start = (uint32_t *)xrealloc(t->start, (size_t)t->vocab + 2, sizeof *t->start);
    t->special = (uint8_t *)xrealloc(t->special, (size_t)t->vocab + 1, 1);
    t->kind = (uint8_t *)xrealloc(t->kind, (size_t)t->vocab + 1, 1);
    if (n) memcpy(t->bytes + at, token, n);
    t->start[t->vocab] = at;
    t->special[t->vocab] = 0;
    t->kind[t->vocab++] = 0;
    t->start[t->vocab] = at + (uint32_t)n;
}

/* Adds an added token for an id of the vocabulary that has none yet. Its name must not be longer than
 * TOKENIZER_NAME_MAX. */
static inline void tokenizer_put_added(Tokenizer *t, int32_t id, uint32_t flags, const char *name) {
    t->added = (TokenizerAdded *)xrealloc(t->added, (size_t)t->added_count + 1, sizeof *t->added);
    int32_t at = t->added_count++;
    for (; at && t->added[at - 1].id > id; at--) t->added[at] = t->added[at - 1];
    t->added[at] = (TokenizerAdded){id, flags, xstrdup(name)};
    t->special[id] = flags & ADDED_SPECIAL;
}

/* Replaces the bytes of a token. */
static inline void tokenizer_replace(Tokenizer *t, int32_t id, const char *token, size_t n) {
    const size_t from = t->start[id], to = t->start[id + 1], end = t->start[t->vocab];
    t->bytes = (char *)xrealloc(t->bytes, end + n + 1, 1);
    memmove(t->bytes + from + n, t->bytes + to, end - to);
    memcpy(t->bytes + from, token, n);
    for (int32_t i = id + 1; i <= t->vocab; i++) t->start[i] = (uint32_t)(t->start[i] + n - (to - from));
}

/* Whether the name is one of Llama 3's <|reserved_special_token_0|>, ... or Gemma's <unused0>, ... */
static inline bool tokenizer_reserved(const char *name) {
    static const char *const forms[] = {"<|reserved_special_token_%*d|>%n", "<unused%*d>%n"};
    for (int i = 0; i < 2; i++) {
        int n = 0;
        if (sscanf(name, forms[i], &n) == 0 && n && !name[n]) return true;
    }
    return false;
}

/* Returns an id that a new token may take: one without a token, or one reserved for this by the model's authors; or -1.
 * Models have rows for these ids, so they do not grow. */
static inline int32_t tokenizer_unused(const Tokenizer *t) {
    uint8_t *used = (uint8_t *)xcalloc((size_t)t->vocab, 1);
    int32_t found = -1;
    const int32_t named[] = {t->eos, t->bos, t->unknown};
    for (int i = 0; i < 3; i++)
        if (named[i] >= 0 && named[i] < t->vocab) used[named[i]] = 1;
    for (int32_t i = 0; i < t->end_count; i++) used[t->ends[i]] = 1;
    for (int32_t i = 0; i < t->merge_count; i++) {
        used[t->merges[i].left] = 1;
        used[t->merges[i].right] = 1;
        used[t->merges[i].merged] = 1;
    }
    for (int32_t id = 0; id < t->vocab && found < 0; id++) {
        char name[64] = "";
        size_t n;
        const char *token = tokenizer_token(t, id, &n);
        if (used[id] || n >= sizeof name || (n && *token != '<')) continue;
        memcpy(name, token, n);
        if (!n || tokenizer_reserved(name)) found = id;
    }
    free(used);
    return found;
}

/* Adds the special token `name`, unless an added token has this name. It takes the first unused id, else the next. */
static inline bool tokenizer_add_special(Tokenizer *t, const char *name, Error *e) {
    const size_t n = strlen(name);
    if (tokenizer_special(t, name) >= 0) return true;
    if (!n || n > TOKENIZER_NAME_MAX)
        return error_set(e, "special token '%.40s': has %zu bytes, expected 1 to %d", name, n, TOKENIZER_NAME_MAX);
    if (tokenizer_find(t, name, n) >= 0)
        return error_set(e, "special token '%s': is an ordinary token of this vocabulary", name);
    int32_t id = t->vocab ? tokenizer_unused(t) : -1;
    if (id < 0 && t->vocab >= TOKENIZER_VOCAB_MAX)
        return error_set(e, "special token '%s': the vocabulary is full at %d tokens", name, t->vocab);
    if (id >= 0) tokenizer_replace(t, id, name, n);
    else {
        tokenizer_append(t, name, n);
        id = t->vocab - 1;
    }
    t->kind[id] = TOKEN_APART;
    TokenizerAdded *old = tokenizer_added_at(t, id);
    if (old) {
        free(old->name);
        *old = (TokenizerAdded){id, ADDED_SPECIAL, xstrdup(name)};
    } else tokenizer_put_added(t, id, ADDED_SPECIAL, name);
    tokenizer_list_added(t);
    return true;
}

/* Sets the tokens that end a completion, at most TOKENIZER_ENDS_MAX different ones. */
static inline bool tokenizer_set_ends(Tokenizer *t, const int32_t *ids, int32_t n, Error *e) {
    int32_t ends[TOKENIZER_ENDS_MAX], count = 0;
    for (int32_t i = 0; i < n; i++) {
        bool known = false;
        for (int32_t k = 0; k < count; k++) known |= ends[k] == ids[i];
        if (known) continue;
        if (ids[i] < 0 || ids[i] >= t->vocab)
            return error_set(e, "end token %d is outside the vocabulary of %d", ids[i], t->vocab);
        if (count == TOKENIZER_ENDS_MAX) return error_set(e, "more than %d end tokens", TOKENIZER_ENDS_MAX);
        ends[count++] = ids[i];
    }
    if (!count) return error_set(e, "no end token, expected 1 to %d", TOKENIZER_ENDS_MAX);
    memcpy(t->ends, ends, (size_t)count * sizeof *ends);
    t->end_count = count;
    return true;
}

/* Whether the token ends a completion. */
static inline bool tokenizer_is_end(const Tokenizer *t, int32_t id) {
    for (int32_t i = 0; i < t->end_count; i++)
        if (t->ends[i] == id) return true;
    return false;
}

/* Creates the byte tokenizer. */
static inline bool tokenizer_bytes(Tokenizer *t, Error *e) {
    static const char *const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"};
    *t = (Tokenizer){.eos = 256, .bos = -1, .unknown = -1};
    for (int i = 0; i < 256; i++) tokenizer_append(t, (const char[]){(char)i}, 1);
    for (int i = 0; i < 4; i++)
        if (!tokenizer_add_special(t, special[i], e)) return false;
    return tokenizer_start(t, "bytes", e);
}

/* ---- several threads ------------------------------------------------------------------------------------------- */

static inline struct TokenizerScratch *tokenizer_scratch_share(const struct TokenizerScratch *s) {
    struct TokenizerScratch *mine = (struct TokenizerScratch *)xcalloc(1, sizeof *mine);
    bpe_share(&mine->bpe, &s->bpe);
    pretokenizer_share(&mine->pieces, &s->pieces);
    return mine;
}

/* Returns a tokenizer with which another thread may encode at the same time as with t. It has t's tables: t must
 * neither change nor be freed before tokenizer_unshare(). */
static inline Tokenizer tokenizer_share(const Tokenizer *t) {
    Tokenizer mine = *t;
    mine.scratch = tokenizer_scratch_share(t->scratch);
    return mine;
}

static inline void tokenizer_unshare(Tokenizer *mine) {
    bpe_unshare(&mine->scratch->bpe);
    pretokenizer_unshare(&mine->scratch->pieces);
    tokenizer_scratch_free(mine->scratch);
    *mine = (Tokenizer){0};
}

/* Lets this many threads of OpenMP encode a long text. Its tokens do not depend on their number. Called once. */
static inline void tokenizer_use_threads(Tokenizer *t, int threads) {
    struct TokenizerScratch *s = t->scratch;
    s->more = (struct TokenizerScratch **)xcalloc((size_t)threads, sizeof *s->more);
    for (int i = 0; i + 1 < threads; i++) s->more[i] = tokenizer_scratch_share(s);
    s->threads = threads;
}

/* Whether several threads encode a text of n bytes. */
static inline bool tokenizer_is_long(const Tokenizer *t, size_t n) {
    return t->scratch->threads > 1 && n >= 2 * TOKENIZER_CHUNK;
}

static inline bool tokenizer_encode_long(const Tokenizer *t, const char *text, size_t n, TokenList *out, Error *e);

/* ---- encoding -------------------------------------------------------------------------------------------------- */

/* Appends the tokens of a piece. */
static inline void tokenizer_piece(const Tokenizer *t, const char *piece, size_t n, TokenList *out) {
    Bpe *bpe = &t->scratch->bpe;
    const int32_t id = t->flags & TOKENIZER_WHOLE ? tokenizer_find(t, piece, n) : -1;
    if (id >= 0) token_list_append(out, id);
    else if (t->merge_count) bpe_encode(bpe, piece, n, out);
    else {
        token_list_reserve(out, n);
        out->count += bpe_symbols(bpe, (const unsigned char *)piece, (int)n, out->ids + out->count);
    }
}

/* A part of a long text, which begins at byte `from`, and its tokens. */
typedef struct TokenizerChunk {
    size_t from, to; /* it has the pieces or words that begin in [from, to) */
    size_t stop;     /* where the last one ends */
    TokenList ids;
    size_t place[TOKENIZER_PLACES];  /* (places) the first places at which a piece begins whatever was before it ... */
    int32_t count[TOKENIZER_PLACES]; /* ... and the number of tokens before each of them */
    int places;
} TokenizerChunk;

/* Appends the tokens of the pieces that begin in bytes [from, to) of the text, and sets *stop to where the last one
 * ends. The pieces after `from` and after *stop depend on the text alone. chunk: notes the places of which this holds;
 * may be NULL. */
static inline bool tokenizer_encode_pieces(const Tokenizer *t, const char *text, size_t n, size_t from, size_t to,
                                           TokenizerChunk *chunk, size_t *stop, TokenList *out, Error *e) {
    enum { AHEAD = 16 }; /* pieces that are found before they are encoded, so that the cache is read in time */
    Pretokenizer *p = &t->scratch->pieces;
    size_t at = from, ends[AHEAD + 1];
    pretokenizer_restart(p);
    while (at < to || !pretokenizer_fresh(p, at)) {
        const bool noted = chunk && chunk->places < TOKENIZER_PLACES;
        if (noted && pretokenizer_fresh(p, at)) {
            chunk->count[chunk->places] = out->count;
            chunk->place[chunk->places++] = at;
        }
        int count = 0;
        ends[0] = at;
        do {
            if (!pretokenizer_next(p, text, n, at, &ends[count + 1], e)) return false;
            bpe_prefetch(&t->scratch->bpe, text + at, ends[count + 1] - at);
            at = ends[++count];
        } while (count < AHEAD && !noted && (at < to || !pretokenizer_fresh(p, at)));
        for (int i = 0; i < count; i++) tokenizer_piece(t, text + ends[i], ends[i + 1] - ends[i], out);
    }
    *stop = at;
    return true;
}

/* Encodes text by byte-level BPE. */
static inline bool tokenizer_encode_bytes(const Tokenizer *t, const char *text, size_t n, TokenList *out, Error *e) {
    if (!t->pattern) {
        if (n) tokenizer_piece(t, text, n, out);
        return true;
    }
    while (n) {
        const size_t valid = utf8_valid(text, n);
        size_t stop;
        if (!(tokenizer_is_long(t, valid) ? tokenizer_encode_long(t, text, valid, out, e)
                                          : tokenizer_encode_pieces(t, text, valid, 0, valid, NULL, &stop, out, e)))
            return false;
        size_t broken = valid;
        while (broken < n && !utf8_length(text + broken, n - broken)) broken++;
        if (broken > valid) tokenizer_piece(t, text + valid, broken - valid, out);
        text += broken;
        n -= broken;
    }
    return true;
}

/* Encodes one word of text, or all of it, by BPE over characters. */
static inline void tokenizer_encode_word(const Tokenizer *t, const char *text, size_t n, TokenList *out) {
    Bpe *bpe = &t->scratch->bpe;
    const int32_t id = t->flags & TOKENIZER_WHOLE ? tokenizer_find(t, text, n) : -1;
    if (id >= 0) {
        token_list_append(out, id);
        return;
    }
    uint32_t before, character;
    size_t at = 0;
    for (size_t i = bpe_read(text, n, &before), length; i < n; i += length, before = character) {
        length = bpe_read(text + i, n - i, &character);
        if (bpe_joins(bpe, before, character)) continue;
        bpe_encode(bpe, text + at, i - at, out);
        at = i;
    }
    bpe_encode(bpe, text + at, n - at, out);
}

/* Appends the tokens of the words of a text. */
static inline void tokenizer_encode_words(const Tokenizer *t, const char *text, size_t n, TokenList *out) {
    for (size_t at = 0, end; at < n; at = end) {
        const char *space = t->flags & TOKENIZER_SPLIT ? (const char *)memchr(text + at + 1, ' ', n - at - 1) : NULL;
        end = space ? (size_t)(space - text) : n;
        tokenizer_encode_word(t, text + at, end - at, out);
    }
}

/* Encodes a part of the text by BPE over characters. first: no text and no token is before it; inside: text is. */
static inline void tokenizer_encode_characters(const Tokenizer *t, const char *text, size_t n, bool first, bool inside,
                                               TokenList *out) {
    const bool replace = !(t->flags & TOKENIZER_REPLACE), sign = n >= 3 && !memcmp(text, "\xE2\x96\x81", 3);
    const bool prefix = t->flags & TOKENIZER_PREFIX && !inside && (first || !(t->flags & TOKENIZER_PREFIX_FIRST)) &&
                        *text != ' ' && !sign;
    if (prefix || tokenizer_spaced(replace, text, n)) {
        TextBuffer *b = &t->scratch->spaced;
        text_clear(b);
        if (prefix) text_append(b, " ", 1);
        tokenizer_spaces(text, n, b);
        text = b->text;
        n = b->length;
    }
    const int32_t begin = out->count;
    const bool divided = t->flags & TOKENIZER_SPLIT || !(t->flags & TOKENIZER_WHOLE);
    if (divided && tokenizer_is_long(t, n)) tokenizer_encode_long(t, text, n, out, NULL);
    else tokenizer_encode_words(t, text, n, out);
    if (!(t->flags & TOKENIZER_FUSE) || t->scratch->bpe.fallback_id[0] >= 0) return;
    int32_t kept = begin;
    for (int32_t i = begin; i < out->count; i++)
        if (i == begin || out->ids[i] != t->unknown || out->ids[i - 1] != t->unknown) out->ids[kept++] = out->ids[i];
    out->count = kept;
}

/* ---- long texts ------------------------------------------------------------------------------------------------ */

/* Returns the first place from `at` > 0 on at which the words of a text over characters are divided, whatever is before
 * and after; n if there is none. */
static inline size_t tokenizer_word_end(const Tokenizer *t, const char *text, size_t n, size_t at) {
    uint32_t before, character;
    if (t->flags & TOKENIZER_SPLIT) {
        const char *space = (const char *)memchr(text + at, ' ', n - at);
        return space ? (size_t)(space - text) : n;
    }
    while (at < n && ((unsigned char)text[at] & 0xC0) == 0x80) at++; /* no character begins with such a byte */
    if (at < n) at += bpe_read(text + at, n - at, &before);
    for (size_t length; at < n; at += length, before = character) {
        length = bpe_read(text + at, n - at, &character);
        if (!bpe_joins(&t->scratch->bpe, before, character)) return at;
    }
    return n;
}

/* Divides the text from byte `from` on into at most `count` chunks. Returns their number. */
static inline int tokenizer_chunks(const Tokenizer *t, const char *text, size_t n, size_t from, TokenizerChunk *chunk,
                                   int count) {
    int used = 0;
    size_t to = from;
    for (; used < count && from < n; from = to) {
        to = n - from < 2 * TOKENIZER_CHUNK ? n : from + TOKENIZER_CHUNK;
        if (to < n && t->flags & TOKENIZER_CHARACTERS) to = tokenizer_word_end(t, text, n, to);
        while (to < n && ((unsigned char)text[to] & 0xC0) == 0x80) to++;
        chunk[used].from = from;
        chunk[used].to = to;
        chunk[used].ids.count = chunk[used].places = 0;
        used++;
    }
    return used;
}

/* Appends the tokens of the pieces of a chunk to those before it, which end at *at. A chunk may begin inside a piece,
 * but as soon as a piece begins at the same place in both, all further pieces are the same. */
static inline bool tokenizer_join_chunk(const Tokenizer *t, const char *text, size_t n, const TokenizerChunk *c,
                                        size_t *at, TokenList *out, Error *e) {
    for (int i = 0; *at < c->to;) {
        while (i < c->places && c->place[i] < *at) i++;
        if (i < c->places && c->place[i] == *at) {
            const int32_t before = c->count[i], more = c->ids.count - before;
            token_list_reserve(out, (size_t)more);
            memcpy(out->ids + out->count, c->ids.ids + before, (size_t)more * sizeof *out->ids);
            out->count += more;
            *at = c->stop;
        } else if (!tokenizer_encode_pieces(t, text, n, *at, *at + 1, NULL, at, out, e)) return false;
    }
    return true;
}

/* Encodes a chunk with the memory of one of the threads. */
static inline void tokenizer_encode_chunk(const Tokenizer *t, int thread, const char *text, size_t n,
                                          TokenizerChunk *c) {
    Tokenizer mine = *t;
    if (thread) mine.scratch = t->scratch->more[thread - 1];
    if (t->flags & TOKENIZER_CHARACTERS) {
        tokenizer_encode_words(&mine, text + c->from, c->to - c->from, &c->ids);
        c->place[c->places++] = c->from;
        c->count[0] = 0;
        c->stop = c->to;
    } else if (!tokenizer_encode_pieces(&mine, text, n, c->from, c->to, c, &c->stop, &c->ids, NULL))
        c->places = 0; /* its pieces are searched for again, and the error is found if they belong to the text */
}

/* Encodes a long text with several threads: the pieces of a text without bytes outside characters, or words. */
static inline bool tokenizer_encode_long(const Tokenizer *t, const char *text, size_t n, TokenList *out, Error *e) {
    const int threads = t->scratch->threads, most = 8 * threads;
    TokenizerChunk *chunk = (TokenizerChunk *)xcalloc((size_t)most, sizeof *chunk);
    bool ok = true;
    for (size_t from = 0, at = 0; ok && from < n;) {
        const int count = tokenizer_chunks(t, text, n, from, chunk, most);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (int i = 0; i < count; i++) tokenizer_encode_chunk(t, omp_get_thread_num(), text, n, &chunk[i]);
        for (int i = 0; ok && i < count; i++) ok = tokenizer_join_chunk(t, text, n, &chunk[i], &at, out, e);
        from = chunk[count - 1].to;
    }
    for (int i = 0; i < most; i++) token_list_free(&chunk[i].ids);
    free(chunk);
    return ok;
}

/* ---- added tokens ---------------------------------------------------------------------------------------------- */

/* Returns the longest name that begins at text, or NULL. */
static inline const TokenizerName *tokenizer_name_at(const TokenizerNames *names, const char *text, size_t n) {
    const TokenizerName *best = NULL;
    int32_t low = names->first[(unsigned char)*text], high = names->first[(unsigned char)*text + 1];
    for (uint32_t depth = 1; low < high; depth++) { /* names[low..high) begin with text[0..depth) */
        if (names->names[low].length == depth) best = &names->names[low];
        while (low < high && names->names[low].length == depth) low++;
        if (depth >= n) break;
        const unsigned char next = (unsigned char)text[depth];
        int32_t from = low, to = high;
        while (from < to) {
            const int32_t middle = from + (to - from) / 2;
            if ((unsigned char)names->names[middle].text[depth] < next) from = middle + 1;
            else to = middle;
        }
        low = from;
        to = high;
        while (from < to) {
            const int32_t middle = from + (to - from) / 2;
            if ((unsigned char)names->names[middle].text[depth] <= next) from = middle + 1;
            else to = middle;
        }
        high = from;
    }
    return best;
}

/* Whether the character that ends at text + n (before), or begins at text (not before), is one of a word: a letter, a
 * mark, a digit, a connector or an alphabetic symbol, as \w in `tokenizers` (Unicode Technical Standard 18, annex C) */
static inline bool tokenizer_word(const char *text, size_t n, bool before) {
    int length = before ? 0 : utf8_length(text, n);
    for (int i = 1; before && i <= 4 && (size_t)i <= n && !length; i++)
        if (utf8_length(text + n - i, (size_t)i) == i) length = i;
    if (!length) return false;
    const uint32_t c = utf8_decode(before ? text + n - length : text, length);
    const utf8proc_category_t category = utf8proc_category((int32_t)c);
    return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) || category == UTF8PROC_CATEGORY_PC ||
           c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
           (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

/* Finds the first name in text[*at..n), passing over special tokens unless `specials` is set. Returns it and sets *at
 * to its position, or returns NULL. */
static inline const TokenizerName *tokenizer_find_name(const TokenizerNames *names, const char *text, size_t n,
                                                       bool specials, size_t *at) {
    if (!names->count || (!specials && !names->ordinary)) return NULL;
    for (size_t i = *at; i < n; i++) {
        const unsigned char byte = (unsigned char)text[i];
        if (names->first[byte] == names->first[byte + 1]) continue;
        const TokenizerName *name = tokenizer_name_at(names, text + i, n - i);
        if (!name) continue;
        const size_t end = i + name->length;
        const bool within = name->flags & ADDED_SINGLE_WORD &&
                            (tokenizer_word(text, i, true) || tokenizer_word(text + end, n - end, false));
        if (!within && (specials || !(name->flags & ADDED_SPECIAL))) {
            *at = i;
            return name;
        }
        i = end - 1;
    }
    return NULL;
}

/* Finds the first special token in text[*at..n). Returns its id and sets *at to its position, or returns -1. */
static inline int32_t tokenizer_find_special(const Tokenizer *t, const char *text, size_t n, size_t *at) {
    size_t found = *at, length;
    for (const TokenizerName *name; (name = tokenizer_find_name(&t->raw, text, n, true, &found)); found += length) {
        length = name->length;
        if (!(name->flags & ADDED_SPECIAL)) continue;
        *at = found;
        return name->id;
    }
    return -1;
}

/* Whether the character is white space (Unicode's White_Space). */
static inline bool tokenizer_is_white(uint32_t c) {
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* Returns the number of bytes of white space at the start of the text. */
static inline size_t tokenizer_white(const char *text, size_t n) {
    size_t i = 0;
    for (int length; (length = utf8_length(text + i, n - i)); i += (size_t)length)
        if (!tokenizer_is_white(utf8_decode(text + i, length))) break;
    return i;
}

/* Returns the length of the text without the white space at its end. */
static inline size_t tokenizer_trim(const char *text, size_t n) {
    for (;;) {
        size_t length = 1; /* no white space has four bytes */
        while (length < 3 && length < n && utf8_length(text + n - length, length) != (int)length) length++;
        if (length > n || utf8_length(text + n - length, length) != (int)length ||
            !tokenizer_is_white(utf8_decode(text + n - length, (int)length)))
            return n;
        n -= length;
    }
}

/* What is before a part of a text. */
typedef enum TokenizerPlace { TOKENIZER_FIRST, TOKENIZER_AFTER_ADDED, TOKENIZER_INSIDE } TokenizerPlace;

static inline bool tokenizer_encode_part(const Tokenizer *t, const char *text, size_t n, bool specials, bool normalized,
                                         TokenizerPlace place, TokenList *out, Error *e);

/* Encodes text between added tokens. */
static inline bool tokenizer_encode_between(const Tokenizer *t, const char *text, size_t n, bool specials,
                                            bool normalized, TokenizerPlace place, TokenList *out, Error *e) {
    struct TokenizerScratch *s = t->scratch;
    const bool inside = place == TOKENIZER_INSIDE;
    if (!normalized) {
        text = tokenizer_normalize(t, inside, text, &n, &s->nfc, &s->normal);
        return tokenizer_encode_part(t, text, n, specials, true, place, out, e);
    }
    if (!(t->flags & TOKENIZER_CHARACTERS)) return tokenizer_encode_bytes(t, text, n, out, e);
    tokenizer_encode_characters(t, text, n, place == TOKENIZER_FIRST, inside, out);
    return true;
}

/* Encodes text, cutting out the added tokens that are searched for in raw text or, on the second level, in normalised
 * text. The search continues after a name, not after the white space that belongs to it, as in `tokenizers`. */
static inline bool tokenizer_encode_part(const Tokenizer *t, const char *text, size_t n, bool specials, bool normalized,
                                         TokenizerPlace place, TokenList *out, Error *e) {
    const TokenizerNames *names = normalized ? &t->normalized : &t->raw;
    size_t done = 0, from = 0, white = 0; /* text is white space up to `white` */
    for (;;) {
        size_t at = from;
        const TokenizerName *name = tokenizer_find_name(names, text, n, specials, &at);
        size_t begin = name ? at : n;
        if (name && name->flags & ADDED_LSTRIP && begin > done)
            begin = done + tokenizer_trim(text + done, begin - done);
        if (done < begin &&
            !tokenizer_encode_between(t, text + done, begin - done, specials, normalized, place, out, e))
            return false;
        if (!name) return true;
        token_list_append(out, name->id);
        done = from = at + name->length;
        if (name->flags & ADDED_RSTRIP)
            done = white = done < white ? white : done + tokenizer_white(text + done, n - done);
        place = TOKENIZER_AFTER_ADDED;
    }
}

/* Appends the ids of text[0..n), which may be any bytes. how: flags TOKENIZER_SPECIALS, TOKENIZER_CONTINUES and
 * TOKENIZER_DOCUMENT, or 0. Fails on more than 1 GiB of text, or if a pattern from a tokenizer.json exceeds the match
 * limit. Sources: tokenizers' added_vocabulary.rs, models/bpe, pre_tokenizers/metaspace.rs. */
static inline bool tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int how, TokenList *out, Error *e) {
    if (n > (size_t)(TOKENIZER_TEXT_MAX - 1) - (size_t)out->count)
        return error_set(e, "text of %zu bytes is too long, expected at most %d bytes and tokens in one list", n,
                         TOKENIZER_TEXT_MAX - 1);
    TokenizerPlace place = TOKENIZER_FIRST;
    if (how & TOKENIZER_CONTINUES && out->count) {
        const TokenizerAdded *last = tokenizer_added_at(t, out->ids[out->count - 1]);
        place = last ? TOKENIZER_AFTER_ADDED : TOKENIZER_INSIDE;
        const size_t white = last && last->flags & ADDED_RSTRIP ? tokenizer_white(text, n) : 0;
        text += white;
        n -= white;
    } else if (how & TOKENIZER_DOCUMENT && t->add_bos) token_list_append(out, t->bos);
    return tokenizer_encode_part(t, text, n, how & TOKENIZER_SPECIALS, false, place, out, e);
}

/* ---- decoding -------------------------------------------------------------------------------------------------- */

/* Appends the bytes of the tokens, which may end inside a character. Special tokens are omitted unless `specials` is
 * set. An id outside the vocabulary becomes U+FFFD. *started: whether text has been decoded before; it is set once a
 * byte is appended. */
static inline void tokenizer_decode_more(const Tokenizer *t, const int32_t *ids, int32_t n, bool specials,
                                         bool *started, TextBuffer *out) {
    text_append(out, "", 0);
    for (int32_t i = 0; i < n; i++) {
        size_t length;
        if (ids[i] < 0 || ids[i] >= t->vocab) {
            text_string(out, "\xEF\xBF\xBD");
            *started = true;
            continue;
        }
        const char *token = tokenizer_token(t, ids[i], &length);
        if (!length || (t->special[ids[i]] && !specials)) continue;
        const bool strip = !*started && t->flags & TOKENIZER_STRIP && *token == ' ';
        text_append(out, token + strip, length - strip);
        *started = true;
    }
}

/* Appends the text that the tokens are, see tokenizer_decode_more(). */
static inline void tokenizer_decode(const Tokenizer *t, const int32_t *ids, int32_t n, bool specials, TextBuffer *out) {
    bool started = false;
    tokenizer_decode_more(t, ids, n, specials, &started, out);
}

/* ---- the blob -------------------------------------------------------------------------------------------------- */

enum { TOKENIZER_HEADER = 64, TOKENIZER_NUMBERS = 14 };

/* Stores the tokenizer as a blob of *n bytes in new memory. */
static inline bool tokenizer_store(const Tokenizer *t, void **blob, size_t *n, Error *e) {
    const size_t pattern = t->pattern ? strlen(t->pattern) : 0, bytes = t->start[t->vocab];
    size_t names = 0;
    for (int32_t i = 0; i < t->added_count; i++) names += strlen(t->added[i].name);
    if (bytes > INT32_MAX || pattern > INT32_MAX || names > INT32_MAX)
        return error_set(e, "tokenizer: is too large to be stored");
    // clang-format off
    const uint32_t header[TOKENIZER_NUMBERS] = {
        2, (uint32_t)t->vocab, t->flags, (uint32_t)t->eos, (uint32_t)t->bos, (uint32_t)t->unknown,
        (uint32_t)t->end_count, (uint32_t)t->merge_count, (uint32_t)t->added_count,
        (uint32_t)pattern, (uint32_t)bytes, (uint32_t)names};
    // clang-format on
    TextBuffer b = {0};
    text_append(&b, "LLMCTOKN", 8);
    text_append(&b, (const char *)header, sizeof header);
    text_append(&b, t->pattern ? t->pattern : "", pattern);
    text_append(&b, (const char *)t->ends, (size_t)t->end_count * sizeof *t->ends);
    for (int32_t id = 0; id < t->vocab; id++) {
        const uint16_t length = (uint16_t)(t->start[id + 1] - t->start[id]);
        text_append(&b, (const char *)&length, sizeof length);
    }
    text_append(&b, (const char *)t->kind, (size_t)t->vocab);
    text_append(&b, t->bytes, bytes);
    for (int32_t i = 0; i < t->added_count; i++) {
        const uint16_t rest[2] = {(uint16_t)t->added[i].flags, (uint16_t)strlen(t->added[i].name)};
        text_append(&b, (const char *)&t->added[i].id, sizeof t->added[i].id);
        text_append(&b, (const char *)rest, sizeof rest);
    }
    for (int32_t i = 0; i < t->added_count; i++) text_string(&b, t->added[i].name);
    text_append(&b, (const char *)t->merges, (size_t)t->merge_count * sizeof *t->merges);
    *blob = b.text;
    *n = b.length;
    return true;
}

/* Reads the list of added tokens and their names. */
static inline bool tokenizer_load_added(Tokenizer *t, uint32_t count, size_t bytes, const uint8_t *in, Error *e) {
    const char *names = (const char *)in + 8 * (size_t)count;
    t->added = (TokenizerAdded *)xcalloc(count, sizeof *t->added);
    int64_t last = -1;
    for (uint32_t i = 0; i < count; i++, in += 8) {
        uint32_t id;
        uint16_t rest[2];
        memcpy(&id, in, 4);
        memcpy(rest, in + 4, 4);
        if (id >= (uint32_t)t->vocab || (int64_t)id <= last)
            return error_set(e, "tokenizer: added token %u is out of order or outside the vocabulary of %d", id,
                             t->vocab);
        if (!rest[1] || rest[1] > TOKENIZER_NAME_MAX || rest[1] > bytes || memchr(names, 0, rest[1]))
            return error_set(e, "tokenizer: added token %u has no valid name", id);
        if (rest[0] & ~ADDED_FLAGS) return error_set(e, "tokenizer: added token %u has flags %u", id, rest[0]);
        t->added[t->added_count++] = (TokenizerAdded){(int32_t)id, rest[0], xstrndup(names, rest[1])};
        t->special[id] = rest[0] & ADDED_SPECIAL;
        names += rest[1];
        bytes -= rest[1];
        last = id;
    }
    return !bytes || error_set(e, "tokenizer: the added tokens' names do not add up to their bytes");
}

/* Fills in the tables from the blob, whose size has been checked against the header. */
static inline bool tokenizer_load_tables(Tokenizer *t, const uint32_t *header, const uint8_t *in, Error *e) {
    const size_t pattern = header[9], bytes = header[10];
    const int32_t vocab = (int32_t)header[1];
    t->flags = header[2];
    t->eos = (int32_t)header[3];
    t->bos = (int32_t)header[4];
    t->unknown = (int32_t)header[5];
    t->merge_count = (int32_t)header[7];
    if (pattern) t->pattern = xstrndup((const char *)in, pattern);
    if (pattern && strlen(t->pattern) != pattern) return error_set(e, "tokenizer: pattern contains a NUL");
    in += pattern;
    int32_t ends[TOKENIZER_ENDS_MAX];
    memcpy(ends, in, header[6] * sizeof *ends);
    in += header[6] * sizeof *ends;
    t->start = (uint32_t *)xcalloc((size_t)vocab + 1, sizeof *t->start);
    t->special = (uint8_t *)xcalloc((size_t)vocab, 1);
    t->kind = (uint8_t *)xcalloc((size_t)vocab, 1);
    uint64_t end = 0;
    for (int32_t id = 0; id < vocab && end <= bytes; id++, in += 2) {
        end += in[0] + 256u * in[1];
        t->start[id + 1] = (uint32_t)end;
    }
    if (end != bytes) return error_set(e, "tokenizer: the tokens' lengths do not add up to their %zu bytes", bytes);
    t->vocab = vocab;
    memcpy(t->kind, in, (uint32_t)vocab);
    in += vocab;
    for (int32_t id = 0; id < vocab; id++)
        if (t->kind[id] > (TOKEN_BYTE | TOKEN_APART))
            return error_set(e, "tokenizer: token %d is of kind %u, expected 0 to 3", id, t->kind[id]);
    t->bytes = (char *)xmalloc(bytes + 1);
    memcpy(t->bytes, in, bytes);
    in += bytes;
    if (!tokenizer_set_ends(t, ends, (int32_t)header[6], NULL) || t->end_count != (int32_t)header[6])
        return error_set(e, "tokenizer: its %u end tokens are not different tokens of the vocabulary", header[6]);
    if (!tokenizer_load_added(t, header[8], header[11], in, e)) return false;
    in += 8 * (size_t)header[8] + header[11];
    t->merges = (Merge *)xcalloc((size_t)t->merge_count, sizeof *t->merges);
    memcpy(t->merges, in, (size_t)t->merge_count * sizeof *t->merges);
    return true;
}

/* Reads a blob of n bytes, from a checkpoint or a shard. */
static inline bool tokenizer_load(Tokenizer *t, const void *blob, size_t n, Error *e) {
    *t = (Tokenizer){0};
    uint32_t header[TOKENIZER_NUMBERS];
    if (n < TOKENIZER_HEADER || memcmp(blob, "LLMCTOKN", 8))
        return error_set(e, "tokenizer: %zu bytes do not begin with LLMCTOKN and a header", n);
    memcpy(header, (const uint8_t *)blob + 8, sizeof header);
    if (header[0] != 2) return error_set(e, "tokenizer: version is %u, expected 2", header[0]);
    if (header[2] & ~(uint32_t)TOKENIZER_FLAGS || header[12] || header[13])
        return error_set(e, "tokenizer: has flags %u or later fields that are unknown", header[2]);
    if (!header[1] || header[1] > TOKENIZER_VOCAB_MAX)
        return error_set(e, "tokenizer: vocabulary is %u, expected 1 to %d", header[1], TOKENIZER_VOCAB_MAX);
    if (header[7] > INT32_MAX / sizeof(Merge))
        return error_set(e, "tokenizer: has %u merges, which is too many", header[7]);
    if (!header[6] || header[6] > TOKENIZER_ENDS_MAX)
        return error_set(e, "tokenizer: has %u end tokens, expected 1 to %d", header[6], TOKENIZER_ENDS_MAX);
    const uint64_t needed = (uint64_t)TOKENIZER_HEADER + header[9] + 4ull * header[6] + 3ull * header[1] + header[10] +
                            8ull * header[8] + header[11] + sizeof(Merge) * (uint64_t)header[7];
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
