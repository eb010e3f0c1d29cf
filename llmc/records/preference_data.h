/* preference_data.h - training data of train_dpo: pairs, or completions with labels.
 *
 * Both kinds of record become pairs; those of an unpaired shard have no rejected completion. KTO takes a preference
 * shard as well: each pair gives a good and a bad completion. TPO takes the gold answers of its pairs. Owns the records,
 * KTO's mismatched completions, and the offsets of each record's tokens in a table of the reference's log-probabilities
 * (ref_logps.h). Completions that exceed the maximum length are truncated (labelled.h).
 *
 *     PreferenceData d;
 *     Inputs files = {0}; // inputs.h
 *     if (!preference_data_open(&d, &files, false, false, &e)) die("%s", e.text);     // before trainer_open()
 *     if (!preference_data_fit(&d, true, 1024, seed, &e)) die("%s", e.text);          // fills d.pair[0 .. d.count)
 *     preference_data_close(&d);
 */
#ifndef LLMC_RECORDS_PREFERENCE_DATA_H
#define LLMC_RECORDS_PREFERENCE_DATA_H

#include "../base/error.h"  /* xcalloc, Error, error_set, warn, ... */
#include "../base/random.h" /* RANDOM_SHUFFLE, Random, random_shuffle, random_start */
#include "examples.h"       /* Example */
#include "inputs.h"         /* Inputs */
#include "labelled.h"       /* FIT_TRUNCATE, Labelled, labelled_close, labelled_fit, ... */
#include "pairs.h"          /* Pair */
#include "ranked.h"         /* ranked_pair */
#include "ref_logps.h"      /* ref_logps_data */
#include "shard.h"          /* RECORD_PREFERENCE, RECORD_UNPAIRED, RecordKind, Shard */

typedef struct PreferenceData {
    bool unpaired; /* completions with labels, for KTO */
    Labelled records;
    const Shard *shard;
    int64_t count;   /* records */
    int32_t longest; /* rows of the longest record, or of a prompt with its mismatched completion */
    Pair *pair;      /* (count) */
    Pair *mismatch;  /* (count) KTO: the prompt with a completion of another prompt */
    uint8_t *good;   /* (count) KTO: 1 for a good completion */
    int64_t goods;   /* number of good completions */
    /* Precomputed log ref of all completions, then of all mismatched ones, or NULL; item i begins at at[i]. */
    float *ref;
    int64_t items;        /* count, or 2 count with mismatched completions */
    int64_t *at;          /* (items + 1) */
    uint64_t fingerprint; /* hash of the tokens that they belong to */
} PreferenceData;

static inline void preference_data_close(PreferenceData *d) {
    labelled_close(&d->records);
    free(d->pair), free(d->mismatch), free(d->good), free(d->ref), free(d->at);
}

/* Opens the files as one shard. unpaired: the loss is one on completions with labels; otherwise on pairs. golds: it trains
 * on a gold answer of each pair, too. Fails if a record has more completions than a pair, or lacks a gold answer. */
static inline bool preference_data_open(PreferenceData *d, const Inputs *in, bool unpaired, bool golds, Error *e) {
    *d = (PreferenceData){.unpaired = unpaired};
    const RecordKind kind = unpaired ? RECORD_UNPAIRED : RECORD_PREFERENCE;
    if (!labelled_open_all(&d->records, (const char *const *)in->path, in->count, kind, unpaired, e)) return false;
    d->shard = d->records.shard;
    const RankedRecords *r = &d->records.ranked;
    if (!golds) labelled_drop_golds(&d->records);
    if (!r->longer && (!golds || r->golds == r->count)) return true;
    const char *name = d->shard->name;
    const long long lacking = r->count - r->golds, longer = r->longer;
    if (longer)
        error_set(
            e, "%s: %lld of %lld records rank more than two completions, expected pairs; train_rm trains on rankings",
            name, longer, (long long)d->shard->count);
    else
        error_set(e,
                  "%s: %lld of %lld pairs have no gold answer (field reference), which --loss-type tpo and tpo-l need",
                  name, lacking, (long long)r->count);
    preference_data_close(d);
    return false;
}

static inline bool preference_same_tokens(const int32_t *a, int32_t a_len, const int32_t *b, int32_t b_len) {
    return a_len == b_len && !memcmp(a, b, (size_t)a_len * sizeof *a);
}

/* KTO's mismatched completions: each prompt gets the completion of the nearest record before it, in a random order of
 * the shard, that has a different prompt. The search goes back at most 63 records. (TRL rotates the completions by one
 * within each batch that it preprocesses.) */
static inline void preference_data_mismatch(PreferenceData *d, int64_t max_length, uint64_t seed) {
    enum { LOOK = 64 };
    Random random = random_start(seed, RANDOM_SHUFFLE + (1ull << 49));
    int64_t *order = (int64_t *)xmalloc((size_t)d->count * sizeof *order);
    for (int64_t i = 0; i < d->count; i++) order[i] = i;
    random_shuffle(&random, order, d->count);
    d->mismatch = (Pair *)xcalloc((size_t)d->count, sizeof *d->mismatch);
    for (int64_t i = 0; i < d->count; i++) {
        const Pair *p = &d->pair[order[i]], *other = &d->pair[order[(i + d->count - 1) % d->count]];
        for (int64_t k = 2; k < d->count && k < LOOK; k++) {
            if (!preference_same_tokens(p->prompt, p->prompt_len, other->prompt, other->prompt_len)) break;
            other = &d->pair[order[(i + d->count - k) % d->count]];
        }
        const int64_t room = max_length - p->prompt_len;
        Pair *m = &d->mismatch[order[i]];
        *m = (Pair){.prompt = p->prompt, .prompt_len = p->prompt_len, .chosen = other->chosen};
        m->chosen_len = other->chosen_len < room ? other->chosen_len : (int32_t)room;
        if (m->prompt_len + m->chosen_len > d->longest) d->longest = m->prompt_len + m->chosen_len;
    }
    free(order);
}

/* Computes the offsets of the completions' tokens in a table of log-probabilities, and the fingerprint of the data. */
static inline void preference_data_places(PreferenceData *d) {
    const int64_t n = d->count, items = d->unpaired ? 2 * n : n;
    d->at = (int64_t *)xcalloc((size_t)items + 1, sizeof *d->at);
    for (int64_t i = 0; i < items; i++) {
        const Pair *p = i < n ? &d->pair[i] : &d->mismatch[i - n];
        d->at[i + 1] = d->at[i] + p->chosen_len + p->rejected_len;
        d->fingerprint = ref_logps_data(d->fingerprint, p->prompt, p->prompt_len, p->chosen, p->chosen_len);
        if (p->rejected_len)
            d->fingerprint = ref_logps_data(d->fingerprint, p->prompt, p->prompt_len, p->rejected, p->rejected_len);
    }
    d->items = items;
}

/* Positions of the longest prompt with one of its completions. Call it after preference_data_fit(). */
static inline int32_t preference_data_positions(const PreferenceData *d) {
    int32_t most = 0;
    for (int64_t i = 0; i < d->items; i++) {
        const Pair *p = i < d->count ? &d->pair[i] : &d->mismatch[i - d->count];
        const int32_t n = p->prompt_len + pair_longest(p);
        if (n > most) most = n;
    }
    return most;
}

/* Fits the records to max_length tokens of prompt and completion, and warns about pairs of equal completions. shared:
 * both completions of a pair share one copy of the prompt; seed: for the mismatched completions. Fails if too few are
 * left. */
static inline bool preference_data_fit(PreferenceData *d, bool shared, int64_t max_length, uint64_t seed, Error *e) {
    const char *name = d->shard->name;
    if (!labelled_fit(&d->records, max_length, FIT_TRUNCATE, e)) return false;
    const int64_t n = d->count = d->records.count;
    int64_t alike = 0;
    d->pair = (Pair *)xcalloc((size_t)n, sizeof *d->pair);
    d->good = (uint8_t *)xcalloc((size_t)n, sizeof *d->good);
    for (int64_t i = 0; i < n; i++) {
        Pair *p = &d->pair[i];
        if (d->unpaired) {
            const Example *x = &d->records.examples.example[i];
            *p = (Pair){.prompt = x->prompt, .prompt_len = x->prompt_len, .chosen = x->completion};
            p->chosen_len = x->completion_len;
            d->good[i] = x->label[0];
            d->goods += d->good[i];
        } else {
            *p = ranked_pair(&d->records.ranked.record[i]);
            alike += preference_same_tokens(p->chosen, p->chosen_len, p->rejected, p->rejected_len);
        }
        if (pair_rows(p, shared) > d->longest) d->longest = (int32_t)pair_rows(p, shared);
    }
    if (alike)
        warn("%s: %lld of %lld pairs have two equal completions and give no gradient", name, (long long)alike,
             (long long)n);
    if (d->unpaired && n < 2)
        return error_set(
            e, "%s: only one record: KTO needs at least two, to pair each prompt with another prompt's completion",
            name);
    if (d->unpaired) preference_data_mismatch(d, max_length, seed);
    preference_data_places(d);
    return true;
}

#endif
