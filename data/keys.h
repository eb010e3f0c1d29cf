/* keys.h - tables from 64-bit keys to numbers and to lists of numbers, for rows that belong together.
 *
 *     Keys k = {0};
 *     bool fresh;
 *     int64_t *value = keys_at(&k, XXH3_64bits(text, n), &fresh);        // 0 when fresh; valid until the next call
 *     keys_free(&k);
 *
 *     Postings p = {0};
 *     postings_add(&p, key, 7);
 *     for (int64_t i = postings_first(&p, key); i >= 0; i = p.item[i].next) use(p.item[i].value);
 *     postings_free(&p);
 *
 * Keys are hashes: two texts with one key are taken as equal, which happens by chance once in 10^7 tables of 10^6 texts.
 */
#ifndef DATA_KEYS_H
#define DATA_KEYS_H

#include "../llmc/base/error.h" /* xcalloc, xrealloc */

typedef struct KeySlot {
    uint64_t key;
    int64_t value;
    bool used;
} KeySlot;

typedef struct Keys {
    KeySlot *slot; /* (capacity), a power of two of which at most half is used */
    size_t count, capacity;
} Keys;

static inline void keys_free(Keys *k) {
    free(k->slot);
    *k = (Keys){0};
}

static inline size_t keys_bytes(const Keys *k) { return k->capacity * sizeof *k->slot; }

/* The slot of the key, or the unused one where it belongs. */
static inline KeySlot *keys_slot(const Keys *k, uint64_t key) {
    size_t i = (size_t)(key * 0x9E3779B97F4A7C15u) & (k->capacity - 1);
    while (k->slot[i].used && k->slot[i].key != key) i = (i + 1) & (k->capacity - 1);
    return &k->slot[i];
}

static inline void keys_grow(Keys *k) {
    const Keys old = *k;
    k->capacity = old.capacity ? 2 * old.capacity : 64;
    k->slot = (KeySlot *)xcalloc(k->capacity, sizeof *k->slot);
    for (size_t i = 0; i < old.capacity; i++)
        if (old.slot[i].used) *keys_slot(k, old.slot[i].key) = old.slot[i];
    free(old.slot);
}

/* The value of the key, or NULL. */
static inline int64_t *keys_find(const Keys *k, uint64_t key) {
    KeySlot *s = k->capacity ? keys_slot(k, key) : NULL;
    return s && s->used ? &s->value : NULL;
}

/* The value of the key, which is added with the value 0 if it is not there; *fresh: whether it was added, may be NULL. */
static inline int64_t *keys_at(Keys *k, uint64_t key, bool *fresh) {
    if (2 * (k->count + 1) > k->capacity) keys_grow(k);
    KeySlot *s = keys_slot(k, key);
    if (fresh) *fresh = !s->used;
    if (!s->used) {
        *s = (KeySlot){.key = key, .used = true};
        k->count++;
    }
    return &s->value;
}

/* ---- lists ----------------------------------------------------------------------------------------------------- */

typedef struct Posting {
    int64_t value, next; /* next: index of the next one of the same key, or -1 */
} Posting;

typedef struct Postings {
    Keys first; /* 1 + index of the last posting that was added to the key */
    Posting *item;
    int64_t count, capacity;
} Postings;

static inline void postings_free(Postings *p) {
    keys_free(&p->first);
    free(p->item);
    *p = (Postings){0};
}

static inline size_t postings_bytes(const Postings *p) {
    return keys_bytes(&p->first) + (size_t)p->capacity * sizeof *p->item;
}

/* The index of the first posting of the key, or -1. */
static inline int64_t postings_first(const Postings *p, uint64_t key) {
    const int64_t *first = keys_find(&p->first, key);
    return first ? *first - 1 : -1;
}

static inline void postings_add(Postings *p, uint64_t key, int64_t value) {
    if (p->count == p->capacity) {
        p->capacity = 2 * p->capacity + 64;
        p->item = (Posting *)xrealloc(p->item, (size_t)p->capacity, sizeof *p->item);
    }
    int64_t *first = keys_at(&p->first, key, NULL);
    p->item[p->count] = (Posting){value, *first - 1};
    *first = ++p->count;
}

#endif
