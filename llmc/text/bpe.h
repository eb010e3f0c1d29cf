/* bpe.h - byte-pair encoding of one piece of text (Sennrich et al. 2016): over bytes as in GPT-2 (Radford et al. 2019),
 * or over characters as in SentencePiece (Kudo and Richardson 2018).
 *
 * A piece starts as the tokens of its bytes or characters. While any adjacent tokens have a merge, the pair with the
 * lowest rank (the leftmost if several are equal) becomes one token. Short pieces are scanned for that pair. Longer
 * pieces keep the pairs in a heap, so a piece of n bytes costs O(n log n), even a megabyte without a space.
 *
 * Several merges may have the same rank. SentencePiece's rule, which merges the pair whose result has the highest
 * score, is expressed in this way: the rank of a merge is the position of its result's score in descending order.
 *
 * A byte without a token is omitted. Over characters, a character without a token becomes the tokens of its bytes, or
 * the unknown token; so does each byte that is not part of a well-formed character. `joins` holds the pairs of
 * characters that some merge joins. Between all other pairs the text can be divided without changing its tokens, and
 * this makes most pieces as short as a word.
 *
 * Merges are stored in one open-addressed table: (left id, right id) -> (rank, merged id). Pieces of at most 15 bytes
 * are cached in a direct-mapped cache with one cache line per entry. Encoding changes the cache and scratch memory, so
 * a Bpe may be used by only one thread at a time; bpe_share() makes one for another thread.
 *
 *     Bpe b = {0};
 *     bpe_start(&b, merges, count);               // merges in ascending order of rank; owned by the caller
 *     memcpy(b.byte_id, ids, sizeof ids);         // token id of each byte
 *     bpe_encode(&b, " hello", 6, &list);
 */
#ifndef LLMC_TEXT_BPE_H
#define LLMC_TEXT_BPE_H

#include "../base/error.h" /* xrealloc, checked, xcalloc */
#include "../base/text.h"  /* TokenList, token_list_reserve, token_list_append, utf8_decode, ... */

typedef struct Merge {
    int32_t left, right, merged, rank;
} Merge;

enum {
    BPE_CACHED = 15,        /* maximum bytes of a cached piece */
    BPE_CACHED_TOKENS = 11, /* maximum tokens of a cached piece */
    BPE_CACHE_BITS = 15,
    BPE_SCANNED = 48, /* maximum bytes of a piece whose pairs are scanned */
    BPE_JOIN_BITS = 20,
};

typedef struct BpeSlot {
    int32_t left, right, rank, merged; /* rank -1: empty */
} BpeSlot;

typedef struct BpeCached {
    uint64_t key[2]; /* the piece, zero padded; the last byte is its length; all 0: empty entry */
    int32_t count, ids[BPE_CACHED_TOKENS];
} BpeCached;

_Static_assert(sizeof(BpeCached) == 64, "an entry of the cache is a cache line");

/* A token of a long piece, in a linked list in text order. */
typedef struct BpeNode {
    int32_t id, next, previous; /* id -1: merged into its left neighbour */
} BpeNode;

typedef struct BpeCharacter {
    uint32_t character;
    int32_t id; /* -1: empty */
} BpeCharacter;

typedef struct Bpe {
    int32_t byte_id[256];     /* token of each byte; over characters, of each ASCII character; -1: none */
    BpeCharacter *characters; /* open-addressed table of tokens by character; NULL: over bytes */
    uint32_t character_mask;
    int32_t fallback_id[256]; /* over characters: token of each byte, or -1 for all bytes */
    int32_t unknown;          /* over characters: token of a character without one, if there are no tokens of bytes */
    uint64_t *joins;          /* over characters: 2^20 bits, by pairs of characters */
    BpeSlot *slots;
    uint32_t mask; /* number of slots - 1; the number is a power of two */
    BpeCached *cache;
    BpeNode *nodes; /* scratch for long pieces */
    uint64_t *heap; /* rank << 32 | node */
    int32_t *ids;   /* the tokens that a long piece starts as */
    size_t nodes_capacity;
} Bpe;

static inline uint32_t bpe_hash(int32_t left, int32_t right) {
    const uint64_t key = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(key ^ key >> 32) * 0x85EBCA6Bu >> 7;
}

/* Returns the merge of (left, right), or NULL. */
static inline const BpeSlot *bpe_merge(const Bpe *b, int32_t left, int32_t right) {
    for (uint32_t i = bpe_hash(left, right);; i++) {
        const BpeSlot *s = &b->slots[i & b->mask];
        if (s->rank < 0) return NULL;
        if (s->left == left && s->right == right) return s;
    }
}

static inline void bpe_start_cache(Bpe *b) {
    const size_t cache = sizeof *b->cache << BPE_CACHE_BITS;
    b->cache = (BpeCached *)checked(aligned_alloc(sizeof *b->cache, cache), cache);
    memset(b->cache, 0, cache);
}

/* Builds the table. If a pair occurs twice, its first rank counts. */
static inline void bpe_start(Bpe *b, const Merge *merges, int32_t count) {
    size_t slots = 16;
    while (slots < 2 * (size_t)count) slots *= 2;
    b->mask = (uint32_t)(slots - 1);
    b->slots = (BpeSlot *)xrealloc(NULL, slots, sizeof *b->slots);
    memset(b->slots, 0xFF, slots * sizeof *b->slots);
    for (int32_t k = 0; k < count; k++) {
        const Merge *m = &merges[k];
        if (bpe_merge(b, m->left, m->right)) continue;
        uint32_t i = bpe_hash(m->left, m->right);
        while (b->slots[i & b->mask].rank >= 0) i++;
        b->slots[i & b->mask] = (BpeSlot){m->left, m->right, m->rank, m->merged};
    }
    bpe_start_cache(b);
}

/* Makes *mine, which another thread may use at the same time as `b`. It has its tables, and a cache and scratch memory
 * of its own. */
static inline void bpe_share(Bpe *mine, const Bpe *b) {
    *mine = *b;
    mine->nodes = NULL;
    mine->heap = NULL;
    mine->ids = NULL;
    mine->nodes_capacity = 0;
    if (b->cache) bpe_start_cache(mine);
}

/* Frees what bpe_share() has not taken from another one. */
static inline void bpe_unshare(Bpe *mine) {
    free(mine->cache);
    free(mine->nodes);
    free(mine->heap);
    free(mine->ids);
    *mine = (Bpe){0};
}

static inline void bpe_free(Bpe *b) {
    free(b->characters);
    free(b->joins);
    free(b->slots);
    bpe_unshare(b);
}

/* ---- characters ------------------------------------------------------------------------------------------------ */

/* Prepares for symbols that are characters, at most `count` of them. */
static inline void bpe_start_characters(Bpe *b, int32_t count) {
    size_t slots = 16;
    while (slots < 2 * (size_t)count) slots *= 2;
    b->characters = (BpeCharacter *)xrealloc(NULL, slots, sizeof *b->characters);
    memset(b->characters, 0xFF, slots * sizeof *b->characters);
    b->character_mask = (uint32_t)(slots - 1);
    b->joins = (uint64_t *)xcalloc((size_t)1 << (BPE_JOIN_BITS - 6), sizeof *b->joins);
    b->unknown = -1;
    for (int i = 0; i < 256; i++) b->byte_id[i] = b->fallback_id[i] = -1;
}

/* Returns the token of a character, or -1. */
static inline int32_t bpe_character(const Bpe *b, uint32_t character) {
    if (character < 0x80) return b->byte_id[character];
    for (uint32_t i = character * 0x9E3779B1u >> 7;; i++) {
        const BpeCharacter *c = &b->characters[i & b->character_mask];
        if (c->id < 0 || c->character == character) return c->id;
    }
}

static inline void bpe_add_character(Bpe *b, uint32_t character, int32_t id) {
    if (character < 0x80) {
        b->byte_id[character] = id;
        return;
    }
    uint32_t i = character * 0x9E3779B1u >> 7;
    while (b->characters[i & b->character_mask].id >= 0) i++;
    b->characters[i & b->character_mask] = (BpeCharacter){character, id};
}

/* Reads the character at s, which has n >= 1 bytes, and returns its length. A byte that begins no well-formed character
 * is returned as one of length 1 above U+10FFFF. */
static inline size_t bpe_read(const char *s, size_t n, uint32_t *character) {
    const unsigned char first = (unsigned char)*s;
    *character = first;
    if (first < 0x80) return 1;
    const int length = utf8_length(s, n);
    *character = length ? utf8_decode(s, length) : 0x110000u + first;
    return length ? (size_t)length : 1;
}

static inline uint32_t bpe_join(uint32_t left, uint32_t right) {
    return (left * 0x9E3779B1u + right) & ((1u << BPE_JOIN_BITS) - 1);
}

/* Records that a merge joins a token that ends with `left` and one that begins with `right`. */
static inline void bpe_add_join(Bpe *b, uint32_t left, uint32_t right) {
    const uint32_t bit = bpe_join(left, right);
    b->joins[bit / 64] |= (uint64_t)1 << bit % 64;
}

/* Whether a merge may join the two characters. Never false if one does. */
static inline bool bpe_joins(const Bpe *b, uint32_t left, uint32_t right) {
    const uint32_t bit = bpe_join(left, right);
    return b->joins[bit / 64] >> bit % 64 & 1;
}

/* Sets ids[0..n) to the tokens that the piece starts as and returns their number. */
static inline int bpe_symbols(const Bpe *b, const unsigned char *piece, int n, int32_t *ids) {
    if (!b->characters) {
        int found = 0;
        for (int i = 0; i < n; i++) {
            ids[found] = b->byte_id[piece[i]];
            found += ids[found] >= 0;
        }
        return found;
    }
    int count = 0;
    for (int i = 0, length; i < n; i += length) {
        uint32_t character;
        length = (int)bpe_read((const char *)piece + i, (size_t)(n - i), &character);
        const int32_t id = bpe_character(b, character);
        if (id >= 0) ids[count++] = id;
        else if (b->fallback_id[0] < 0) ids[count++] = b->unknown;
        else
            for (int k = 0; k < length; k++) ids[count++] = b->fallback_id[piece[i + k]];
    }
    return count;
}

/* ---- pieces ---------------------------------------------------------------------------------------------------- */

/* Repeatedly scans for the pair with the lowest rank and merges it, at most n - 1 times. */
static inline void bpe_encode_short(const Bpe *b, const unsigned char *piece, int n, TokenList *out) {
    int32_t id[BPE_SCANNED], rank[BPE_SCANNED], merged[BPE_SCANNED];
    n = bpe_symbols(b, piece, n, id);
    for (int i = 0; i + 1 < n; i++) {
        const BpeSlot *s = bpe_merge(b, id[i], id[i + 1]);
        rank[i] = s ? s->rank : INT32_MAX;
        merged[i] = s ? s->merged : 0;
    }
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == INT32_MAX) break;
        id[best] = merged[best];
        n--;
        for (int i = best + 1; i < n; i++) id[i] = id[i + 1];
        for (int i = best; i + 1 < n; i++) {
            rank[i] = rank[i + 1];
            merged[i] = merged[i + 1];
        }
        for (int i = best > 0 ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const BpeSlot *s = bpe_merge(b, id[i], id[i + 1]);
            rank[i] = s ? s->rank : INT32_MAX;
            merged[i] = s ? s->merged : 0;
        }
    }
    token_list_reserve(out, (size_t)n);
    memcpy(out->ids + out->count, id, (size_t)n * sizeof *id);
    out->count += n;
}

static inline void bpe_heap_push(uint64_t *heap, size_t *count, uint64_t key) {
    size_t i = (*count)++;
    for (; i && heap[(i - 1) / 2] > key; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = key;
}

static inline uint64_t bpe_heap_pop(uint64_t *heap, size_t *count) {
    const uint64_t top = heap[0], last = heap[--*count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *count; i = child) {
        if (child + 1 < *count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= last) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* Pushes the pair that begins at node i if it has a merge. */
static inline void bpe_push_pair(Bpe *b, int32_t i, size_t *count) {
    if (i < 0 || b->nodes[i].next < 0) return;
    const BpeSlot *s = bpe_merge(b, b->nodes[i].id, b->nodes[b->nodes[i].next].id);
    if (s) bpe_heap_push(b->heap, count, (uint64_t)(uint32_t)s->rank << 32 | (uint32_t)i);
}

/* Merges with a heap. A popped pair is used only if the pair at its node still has that rank. The start pushes n - 1
 * pairs and each of at most n - 1 merges pushes two, so 3n entries suffice. */
static inline void bpe_encode_long(Bpe *b, const unsigned char *piece, int32_t n, TokenList *out) {
    if ((size_t)n > b->nodes_capacity) {
        b->nodes_capacity = (size_t)n;
        b->nodes = (BpeNode *)xrealloc(b->nodes, b->nodes_capacity, sizeof *b->nodes);
        b->heap = (uint64_t *)xrealloc(b->heap, b->nodes_capacity, 3 * sizeof *b->heap);
        b->ids = (int32_t *)xrealloc(b->ids, b->nodes_capacity, sizeof *b->ids);
    }
    BpeNode *node = b->nodes;
    size_t count = 0;
    n = bpe_symbols(b, piece, n, b->ids);
    if (!n) return;
    for (int32_t i = 0; i < n; i++) node[i] = (BpeNode){b->ids[i], i + 1 < n ? i + 1 : -1, i - 1};
    for (int32_t i = 0; i < n; i++) bpe_push_pair(b, i, &count);
    while (count) {
        const uint64_t top = bpe_heap_pop(b->heap, &count);
        const int32_t i = (int32_t)(uint32_t)top, right = node[i].next;
        if (node[i].id < 0 || right < 0) continue;
        const BpeSlot *s = bpe_merge(b, node[i].id, node[right].id);
        if (!s || (uint32_t)s->rank != top >> 32) continue;
        node[i].id = s->merged;
        node[i].next = node[right].next;
        if (node[right].next >= 0) node[node[right].next].previous = i;
        node[right].id = -1;
        bpe_push_pair(b, node[i].previous, &count);
        bpe_push_pair(b, i, &count);
    }
    for (int32_t i = 0; i >= 0; i = node[i].next) token_list_append(out, node[i].id);
}

/* Returns the first n <= 8 bytes at s as a number, without reading past them. */
static inline uint64_t bpe_bytes(const unsigned char *s, size_t n) {
    uint32_t low, high;
    uint64_t all = 0;
    if (n == 8) memcpy(&all, s, 8);
    else if (n >= 4) {
        memcpy(&low, s, 4);
        memcpy(&high, s + n - 4, 4);
        all = low | (uint64_t)high << 8 * (n - 4);
    } else if (n) all = s[0] | (uint64_t)s[n / 2] << 8 * (n / 2) | (uint64_t)s[n - 1] << 8 * (n - 1);
    return all;
}

/* Returns the place in the cache of a piece of at most BPE_CACHED bytes, and its key. */
static inline BpeCached *bpe_cached(const Bpe *b, const unsigned char *piece, size_t n, uint64_t key[2]) {
    key[0] = bpe_bytes(piece, n < 8 ? n : 8);
    key[1] = (n > 8 ? bpe_bytes(piece + 8, n - 8) : 0) | (uint64_t)n << 56;
    const uint64_t mixed = (key[0] ^ key[1] * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u;
    return &b->cache[(mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93u >> (64 - BPE_CACHE_BITS)];
}

/* Begins to read the place in the cache of a piece that will be encoded soon. */
static inline void bpe_prefetch(const Bpe *b, const char *piece, size_t n) {
    uint64_t key[2];
    if (b->cache && n <= BPE_CACHED) __builtin_prefetch(bpe_cached(b, (const unsigned char *)piece, n, key));
}

/* Appends the tokens of piece[0..n). n is at least 1 and less than 2^30. */
static inline void bpe_encode(Bpe *b, const char *piece, size_t n, TokenList *out) {
    const unsigned char *bytes = (const unsigned char *)piece;
    if (n > BPE_SCANNED) {
        bpe_encode_long(b, bytes, (int32_t)n, out);
        return;
    }
    if (n > BPE_CACHED) {
        bpe_encode_short(b, bytes, (int)n, out);
        return;
    }
    uint64_t key[2];
    BpeCached *entry = bpe_cached(b, bytes, n, key);
    if (entry->key[0] == key[0] && entry->key[1] == key[1]) {
        token_list_reserve(out, BPE_CACHED_TOKENS);
        memcpy(out->ids + out->count, entry->ids,
               sizeof entry->ids); /* all of them: cheaper than a loop over `count` */
        out->count += entry->count;
        return;
    }
    const int32_t before = out->count;
    bpe_encode_short(b, bytes, (int)n, out);
    if (out->count - before > BPE_CACHED_TOKENS) return;
    memcpy(entry->key, key, sizeof entry->key);
    entry->count = out->count - before;
    memcpy(entry->ids, out->ids + before, (size_t)entry->count * sizeof *entry->ids);
}

#endif
