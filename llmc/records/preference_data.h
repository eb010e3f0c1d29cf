/* preference_data.h - training data of train_dpo: pairs, or completions with labels.
 *
 * Applies --max-length: truncates completions, leaves out prompts that leave no room for a completion, and warns about
 * both. Owns the records, KTO's mismatched completions, and the offsets of each record's tokens in a table of the
 * reference's log-probabilities (ref_logps.h). Errors in a shard end the program (see trainer.h).
 *
 *     PreferenceData d;
 *     preference_data_open(&d, "prefs.shard", false);          // before trainer_open(), which takes d.shard
 *     preference_data_fit(&d, &shape, 1024, seed);             // after trainer_open(); fills d.pair[0 .. d.count)
 *     preference_data_close(&d);
 */
#ifndef LLMC_RECORDS_PREFERENCE_DATA_H
#define LLMC_RECORDS_PREFERENCE_DATA_H

#include "answer_set.h"
#include "examples.h"
#include "ref_logps.h"

/* The records of a shard in the form used for training. A record of an unpaired shard is a pair without a rejected
 * completion. */
typedef struct PreferenceData {
    bool unpaired;      /* completions with labels, for KTO */
    int64_t max_length; /* maximum tokens of prompt and completion */
    Pairs pairs;
    Examples examples;
    const Shard *shard;
    int64_t count, dropped, cut, alike; /* records; left out; truncated completions; pairs of equal ones */
    int32_t longest;                    /* rows of the longest record */
    Pair *pair, *mismatch;              /* (count) mismatch, kto's: the prompt with a completion of another prompt */
    const uint8_t **good;               /* (count) kto's labels */
    /* Precomputed log ref of all completions, then of all mismatched ones, or NULL; item i begins at at[i]. */
    float *ref;
    int64_t items;        /* count, or 2 count with mismatched completions */
    int64_t *at;          /* (items + 1) */
    uint64_t fingerprint; /* hash of the tokens that they belong to */
} PreferenceData;

/* unpaired: the shard holds completions with labels; otherwise pairs. */
static inline void preference_data_open(PreferenceData *d, const char *path, bool unpaired) {
    Error e;
    *d = (PreferenceData){.unpaired = unpaired};
    if (!(d->unpaired ? examples_open(&d->examples, path, RECORD_UNPAIRED, INT32_MAX, &e)
                      : pairs_open(&d->pairs, path, INT32_MAX, &e)))
        die("%s", e.text);
    d->shard = d->unpaired ? &d->examples.shard : &d->pairs.shard;
}

static inline void preference_data_close(PreferenceData *d) {
    if (d->unpaired) examples_close(&d->examples);
    else pairs_close(&d->pairs);
    free(d->pair), free(d->mismatch), free(d->good), free(d->ref), free(d->at);
}

/* Reads record i, with its completions truncated to --max-length. Returns false if that leaves no room for them. */
static inline bool preference_data_record(PreferenceData *d, int64_t i, Pair *p) {
    if (d->unpaired) {
        const Example *x = examples_get(&d->examples, i);
        *p = (Pair){.prompt = x->prompt, .chosen = x->completion};
        p->prompt_len = x->prompt_len;
        p->chosen_len = x->completion_len;
    } else *p = *pairs_get(&d->pairs, i);
    const int64_t room = d->max_length - p->prompt_len;
    int32_t *length[] = {&p->chosen_len, &p->rejected_len};
    if (room < 1) return false;
    for (int k = 0; k < 2; k++) {
        if (*length[k] <= room) continue;
        d->cut++;
        *length[k] = (int32_t)room;
    }
    return true;
}

static inline bool preference_same_tokens(const int32_t *a, int32_t a_len, const int32_t *b, int32_t b_len) {
    return a_len == b_len && !memcmp(a, b, (size_t)a_len * sizeof *a);
}

/* KTO's mismatched completions: each prompt gets the completion of the nearest record before it, in a random order of
 * the shard, that has a different prompt. (TRL rotates the completions by one within each batch that it
 * preprocesses.) */
static inline void preference_data_mismatch(PreferenceData *d, uint64_t seed) {
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
        const int64_t room = d->max_length - p->prompt_len;
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

/* Takes the records and warns about those that are left out or truncated. Call it once max_length is known. max_length:
 * maximum tokens of prompt and completion; shape: whether pairs share their prompt; seed: for the mismatched
 * completions. */
static inline void preference_data_fit(PreferenceData *d, const AnswerSet *shape, int64_t max_length, uint64_t seed) {
    const char *name = d->shard->name;
    const int64_t records = d->unpaired ? d->examples.count : d->pairs.count;
    d->max_length = max_length;
    d->pair = (Pair *)xcalloc((size_t)records, sizeof *d->pair);
    d->good = (const uint8_t **)xcalloc((size_t)records, sizeof *d->good);
    for (int64_t i = 0; i < records; i++) {
        Pair *p = &d->pair[d->count];
        if (!preference_data_record(d, i, p)) continue;
        if (d->unpaired) d->good[d->count] = examples_get(&d->examples, i)->label;
        else d->alike += preference_same_tokens(p->chosen, p->chosen_len, p->rejected, p->rejected_len);
        d->count++;
        const int32_t rows = answer_set_rows(shape, p);
        if (rows > d->longest) d->longest = rows;
    }
    d->dropped = d->shard->count - d->count;
    const long long n = d->count, max = max_length;
    if (!n) die("%s: no record is left: no prompt leaves room for a completion within %lld tokens", name, max);
    if (d->dropped)
        warn("%s: %lld of %lld records are left out: their prompt is empty or leaves no room within %lld tokens", name,
             (long long)d->dropped, (long long)d->shard->count, max);
    if (d->cut)
        warn("%s: %lld completions exceed %lld tokens with their prompt and were truncated", name, (long long)d->cut,
             max);
    if (d->alike)
        warn("%s: %lld of %lld pairs have two equal completions and give no gradient", name, (long long)d->alike, n);
    if (d->unpaired && n < 2)
        die("%s: only one record: KTO needs at least two, to pair each prompt with another prompt's completion", name);
    if (d->unpaired) preference_data_mismatch(d, seed);
    preference_data_places(d);
}

#endif
