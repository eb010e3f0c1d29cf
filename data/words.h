/* words.h - texts as words: ROUGE-L, rows that are nearly equal, n-grams that two sets of texts share.
 *
 * A word is a run of letters a-z and digits of the text in lower case, as in Google's rouge_score without a stemmer; all other
 * characters separate words. A word is kept as a 64-bit hash.
 *
 *   ROUGE-L      2 P R / (P + R) with P = LCS / words of the one text, R = LCS / words of the other (Lin 2004); 0 if one has no
 *                words. The LCS is found 64 words at a time (Hyyroe 2004, "Bit-parallel LCS-length computation revisited")
 *   Near         texts of which each is compared with all before it. 2 LCS <= 2 shared words, so only texts that share
 *                enough words are compared: no pair is missed
 *   Contamination    the n-grams of a set of texts, and the share of one of these texts that another text covers
 *
 *     Words a = {0}, b = {0};
 *     words_split(&a, "The cat sat.", 12);
 *     words_split(&b, "the cat", 7);
 *     const double f = words_rouge(a.word, a.count, b.word, b.count);        // 0.8
 *     words_free(&a), words_free(&b);
 */
#ifndef DATA_WORDS_H
#define DATA_WORDS_H

#include "../llmc/base/error.h" /* xrealloc, xmalloc, xcalloc */
#include "../llmc/base/io.h"    /* XXH3_64bits, XXH3_64bits_withSeed */
#include "keys.h"               /* Postings, postings_add, postings_first, postings_free, ... */

typedef struct Words {
    uint64_t *word; /* (count) */
    size_t count, capacity;
} Words;

static inline void words_free(Words *w) {
    free(w->word);
    *w = (Words){0};
}

static inline void words_add(Words *w, uint64_t word) {
    if (w->count == w->capacity) {
        w->capacity = 2 * w->capacity + 32;
        w->word = (uint64_t *)xrealloc(w->word, w->capacity, sizeof *w->word);
    }
    w->word[w->count++] = word;
}

/* Appends the words of text[0..n). Of the characters beyond ASCII two have a lower case that holds an ASCII letter: the
 * Kelvin sign (k) and the capital I with a dot (i and a combining dot, which ends the word). */
static inline void words_split(Words *w, const char *text, size_t n) {
    char word[256];
    size_t length = 0;
    for (size_t i = 0; i <= n; i++) {
        char c = i < n ? text[i] : ' ';
        bool ends = false;
        if (n - i >= 3 && !memcmp(text + i, "\xE2\x84\xAA", 3)) c = 'k', i += 2;
        else if (i < n && n - i >= 2 && !memcmp(text + i, "\xC4\xB0", 2)) c = 'i', i++, ends = true;
        if (c >= 'A' && c <= 'Z') c = (char)(c + 32);
        const bool in = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (in && length == sizeof word) { /* the rest of a long word follows the hash of its beginning */
            const uint64_t so_far = XXH3_64bits(word, length);
            memcpy(word, &so_far, sizeof so_far);
            length = sizeof so_far;
        }
        if (in) word[length++] = c;
        if ((!in || ends) && length) {
            words_add(w, XXH3_64bits(word, length));
            length = 0;
        }
    }
}

/* ---- ROUGE-L --------------------------------------------------------------------------------------------------- */

typedef struct WordPlace {
    uint64_t word;
    size_t at;
} WordPlace;

static inline int words_by_word(const void *a, const void *b) {
    const WordPlace *x = (const WordPlace *)a, *y = (const WordPlace *)b;
    if (x->word != y->word) return x->word < y->word ? -1 : 1;
    return (x->at > y->at) - (x->at < y->at);
}

/* Sets mask[blocks] to the places of a word in the sorted list. Returns whether there are any. */
static inline bool words_mask(const WordPlace *place, size_t n, uint64_t word, uint64_t *mask, size_t blocks) {
    size_t low = 0, high = n;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (place[middle].word < word) low = middle + 1;
        else high = middle;
    }
    if (low == n || place[low].word != word) return false;
    memset(mask, 0, blocks * sizeof *mask);
    for (; low < n && place[low].word == word; low++) mask[place[low].at / 64] |= (uint64_t)1 << place[low].at % 64;
    return true;
}

/* The length of the longest common subsequence. A bit of v is 0 where the LCS of a[0..i] with the part of b so far is longer
 * than that of a[0..i). */
static inline size_t words_lcs(const uint64_t *a, size_t n, const uint64_t *b, size_t m) {
    const size_t blocks = (n + 63) / 64;
    if (!n || !m) return 0;
    WordPlace *place = (WordPlace *)xmalloc(n * sizeof *place);
    uint64_t *v = (uint64_t *)xmalloc(2 * blocks * sizeof *v), *mask = v + blocks;
    for (size_t i = 0; i < n; i++) place[i] = (WordPlace){a[i], i};
    qsort(place, n, sizeof *place, words_by_word);
    memset(v, 0xFF, blocks * sizeof *v);
    for (size_t k = 0; k < m; k++) {
        if (!words_mask(place, n, b[k], mask, blocks)) continue;
        uint64_t carry = 0;
        for (size_t i = 0; i < blocks; i++) {
            const uint64_t u = v[i] & mask[i];
            uint64_t sum;
            const bool over = __builtin_add_overflow(v[i], u, &sum);
            const bool more = __builtin_add_overflow(sum, carry, &sum);
            carry = over || more;
            v[i] = sum | (v[i] - u);
        }
    }
    size_t length = 0;
    for (size_t i = 0; i < n; i++) length += !(v[i / 64] >> i % 64 & 1);
    free(place), free(v);
    return length;
}

static inline double words_f1(size_t shared, size_t n, size_t m) {
    const double precision = (double)shared / (double)m, recall = (double)shared / (double)n;
    return shared ? 2 * precision * recall / (precision + recall) : 0;
}

static inline double words_rouge(const uint64_t *a, size_t n, const uint64_t *b, size_t m) {
    return words_f1(words_lcs(a, n, b, m), n, m);
}

/* ---- texts that are nearly equal ------------------------------------------------------------------------------- */

typedef struct Near {
    double limit; /* a text is near another one if ROUGE-L is above it */
    Words words;  /* of all texts that were kept */
    size_t *start, count, capacity;
    Postings texts; /* of the k-th occurrence of a word: the texts that have it */
    int32_t *shared;
    size_t shared_capacity;
} Near;

static inline void near_free(Near *n) {
    words_free(&n->words);
    postings_free(&n->texts);
    free(n->start), free(n->shared);
    *n = (Near){0};
}

static inline size_t near_bytes(const Near *n) {
    return n->words.capacity * sizeof *n->words.word + n->capacity * sizeof *n->start +
           n->shared_capacity * sizeof *n->shared + postings_bytes(&n->texts);
}

static inline int words_by_value(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Turns the words into keys of which each occurs once: the word, its number among its equals, and the group. */
static inline uint64_t *near_keys(const Words *w, uint64_t group) {
    uint64_t *key = (uint64_t *)xmalloc(w->count * sizeof *key), word = 0;
    if (w->count) memcpy(key, w->word, w->count * sizeof *key);
    qsort(key, w->count, sizeof *key, words_by_value);
    for (size_t i = 0, number = 0; i < w->count; i++) {
        number = i && key[i] == word ? number + 1 : 0;
        word = key[i];
        const uint64_t whole[] = {word, number, group};
        key[i] = XXH3_64bits(whole, sizeof whole);
    }
    return key;
}

/* Whether a text is near one of the same group that was kept before. Otherwise it is kept. */
static inline bool near_drops(Near *n, const Words *w, uint64_t group) {
    uint64_t *key = near_keys(w, group);
    bool near = false;
    if (n->shared_capacity < n->count) {
        n->shared = (int32_t *)xrealloc(n->shared, 2 * n->count, sizeof *n->shared);
        n->shared_capacity = 2 * n->count;
    }
    if (n->count) memset(n->shared, 0, n->count * sizeof *n->shared);
    for (size_t i = 0; i < w->count; i++)
        for (int64_t p = postings_first(&n->texts, key[i]); p >= 0; p = n->texts.item[p].next)
            n->shared[n->texts.item[p].value]++;
    for (size_t t = 0; t < n->count && !near; t++) {
        const uint64_t *other = n->words.word + n->start[t];
        const size_t length = (t + 1 < n->count ? n->start[t + 1] : n->words.count) - n->start[t];
        if (words_f1((size_t)n->shared[t], w->count, length) <= n->limit) continue;
        near = words_rouge(w->word, w->count, other, length) > n->limit;
    }
    if (!near) {
        if (n->count == n->capacity) {
            n->capacity = 2 * n->capacity + 64;
            n->start = (size_t *)xrealloc(n->start, n->capacity, sizeof *n->start);
        }
        for (size_t i = 0; i < w->count; i++) postings_add(&n->texts, key[i], (int64_t)n->count);
        n->start[n->count++] = n->words.count;
        for (size_t i = 0; i < w->count; i++) words_add(&n->words, w->word[i]);
    }
    free(key);
    return near;
}

/* ---- contamination --------------------------------------------------------------------------------------------- */

typedef struct Contamination {
    size_t ngram;   /* words of an n-gram; a text with fewer words is one n-gram as a whole */
    double overlap; /* share of a test text that a row must cover to be dropped; 0: one n-gram is enough */
    Postings grams; /* places of the n-grams: text << 32 | first word */
    size_t *length; /* (texts) words */
    size_t texts;
    uint8_t *short_lengths; /* (ngram) whether there is a text of this many words */
} Contamination;

static inline void contamination_free(Contamination *c) {
    postings_free(&c->grams);
    free(c->length), free(c->short_lengths);
    *c = (Contamination){0};
}

static inline uint64_t contamination_gram(const uint64_t *word, size_t n) {
    return XXH3_64bits_withSeed(word, n * sizeof *word, n);
}

/* Adds a text whose n-grams no row may share. */
static inline void contamination_add(Contamination *c, const Words *w) {
    if (!w->count) return;
    const size_t n = w->count < c->ngram ? w->count : c->ngram;
    if (!c->short_lengths) c->short_lengths = (uint8_t *)xcalloc(c->ngram + 1, 1);
    c->short_lengths[n] = 1;
    c->length = (size_t *)xrealloc(c->length, c->texts + 1, sizeof *c->length);
    c->length[c->texts] = w->count;
    for (size_t i = 0; i + n <= w->count; i++)
        postings_add(&c->grams, contamination_gram(w->word + i, n), (int64_t)(c->texts << 32 | i));
    c->texts++;
}

/* Appends the places of the n-grams of n words that the row shares. */
static inline void contamination_places(const Contamination *c, const Words *w, size_t n, Words *places) {
    for (size_t i = 0; i + n <= w->count; i++)
        for (int64_t p = postings_first(&c->grams, contamination_gram(w->word + i, n)); p >= 0;
             p = c->grams.item[p].next)
            words_add(places, (uint64_t)c->grams.item[p].value);
}

/* Whether the row shares n-grams with a text that cover more than `overlap` of the text's words. */
static inline bool contamination_drops(const Contamination *c, const Words *w) {
    Words places = {0};
    for (size_t n = 1; n <= c->ngram && c->short_lengths; n++)
        if (c->short_lengths[n]) contamination_places(c, w, n, &places);
    if (places.count) qsort(places.word, places.count, sizeof *places.word, words_by_value);
    bool drops = false;
    for (size_t i = 0; i < places.count && !drops;) {
        const size_t text = (size_t)(places.word[i] >> 32), length = c->length[text];
        const size_t n = length < c->ngram ? length : c->ngram;
        size_t covered = 0, end = 0; /* end: of the words that have been counted */
        for (; i < places.count && places.word[i] >> 32 == text; i++) {
            const size_t from = (size_t)(places.word[i] & 0xFFFFFFFF);
            covered += from + n - (from > end ? from : end < from + n ? end : from + n);
            if (from + n > end) end = from + n;
        }
        drops = (double)covered > c->overlap * (double)length;
    }
    words_free(&places);
    return drops;
}

#endif
