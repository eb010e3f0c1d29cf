/* labelled.h - the records of a preference, unpaired or step shard, fitted to a maximum length.
 *
 * A shard is opened before the model is known. It is fitted once the maximum length of a prompt with its completion is
 * known. The caller chooses how longer records are treated:
 *
 *   FIT_DROP       the record is left out, because a truncated completion could deserve a different score; a solution
 *                  loses only the steps that do not fit, and is left out if no step fits
 *   FIT_TRUNCATE   its completions are truncated, because the loss is per token; the record is left out only if its
 *                  prompt leaves no room for a token
 *
 * labelled_fit() warns about both.
 *
 *     Labelled l;
 *     if (!labelled_open(&l, "prefs.shard", RECORD_PREFERENCE, false, &e)) die("%s", e.text);
 *     if (!labelled_fit(&l, 1024, FIT_DROP, &e)) die("%s", e.text);
 *     for (int64_t i = 0; i < l.count; i++) rows += labelled_rows(&l, i, true);
 *     labelled_close(&l);
 */
#ifndef LLMC_RECORDS_LABELLED_H
#define LLMC_RECORDS_LABELLED_H

#include "../base/error.h" /* warn, Error, error_set, xcalloc */
#include "eval_sets.h"     /* EvalSets, eval_sets_new */
#include "examples.h"      /* Example, Examples, example_size, examples_close, ... */
#include "inputs.h"        /* Inputs */
#include "ranked.h"        /* Ranked, RankedRecords, ranked_longest, ranked_size, ... */
#include "shard.h"         /* RECORD_PREFERENCE, RecordKind, RECORD_UNPAIRED, Shard */

typedef enum { FIT_DROP, FIT_TRUNCATE } FitKind;

typedef struct Labelled {
    RecordKind kind;
    RankedRecords ranked; /* records of a preference shard */
    Examples examples;    /* records of an unpaired or step shard */
    const Shard *shard;
    int64_t all;       /* rankings or examples of the shard */
    int64_t count;     /* those that remain */
    int64_t dropped;   /* records that were left out */
    int64_t truncated; /* completions that lost tokens; solutions that lost steps */
} Labelled;

static inline void labelled_close(Labelled *l) {
    if (l->kind == RECORD_PREFERENCE) ranked_close(&l->ranked);
    else examples_close(&l->examples);
}

/* Opens n files as one shard. Fails if it is of another kind or has no usable record. unpair: for RECORD_UNPAIRED, a
 * preference shard is taken as well, each pair as a good and a bad completion. */
static inline bool labelled_open_all(Labelled *l, const char *const *paths, int n, RecordKind kind, bool unpair,
                                     Error *e) {
    *l = (Labelled){.kind = kind};
    const bool preference = kind == RECORD_PREFERENCE;
    if (!(preference ? ranked_open_all(&l->ranked, paths, n, e)
                     : examples_open_all(&l->examples, paths, n, kind, unpair, e)))
        return false;
    l->shard = preference ? &l->ranked.shard : &l->examples.shard;
    l->count = preference ? l->ranked.count : l->examples.count;
    l->all = preference ? l->ranked.shard.count : l->examples.count + l->examples.dropped;
    return true;
}

static inline bool labelled_open(Labelled *l, const char *path, RecordKind kind, bool unpair, Error *e) {
    return labelled_open_all(l, &path, 1, kind, unpair, e);
}

/* The number of rows that record i takes in a batch. shared: the completions of a ranking share one copy of the
 * prompt. */
static inline int32_t labelled_rows(const Labelled *l, int64_t i, bool shared) {
    if (l->kind == RECORD_PREFERENCE) return (int32_t)ranked_size(&l->ranked.record[i], shared).rows;
    return (int32_t)example_size(&l->examples.example[i]).rows;
}

/* The number of record i's file among those of the shard. */
static inline int labelled_file(const Labelled *l, int64_t i) {
    return l->kind == RECORD_PREFERENCE ? l->ranked.record[i].file : l->examples.example[i].file;
}

/* Counts the records of each file of the shard. count: (files), set to 0 by the caller. */
static inline void labelled_files(const Labelled *l, int64_t *count) {
    for (int64_t i = 0; i < l->count; i++) count[labelled_file(l, i)]++;
}

/* The records as sets for an evaluation. most: maximum number of records of a set, or 0. */
static inline EvalSets labelled_eval_sets(const Labelled *l, const Inputs *files, int64_t most) {
    int *file = (int *)xcalloc((size_t)l->count + 1, sizeof *file);
    for (int64_t i = 0; i < l->count; i++) file[i] = labelled_file(l, i);
    const EvalSets sets = eval_sets_new(files, file, l->count, most);
    free(file);
    return sets;
}

/* Positions of record i's longest sequence. */
static inline int32_t labelled_positions(const Labelled *l, int64_t i) {
    if (l->kind != RECORD_PREFERENCE) return labelled_rows(l, i, false);
    const Ranked *q = &l->ranked.record[i];
    return q->prompt_len + ranked_longest(q);
}

static inline int32_t labelled_longest(const Labelled *l, bool shared) {
    int32_t most = 0;
    for (int64_t i = 0; i < l->count; i++) {
        const int32_t rows = labelled_rows(l, i, shared);
        if (rows > most) most = rows;
    }
    return most;
}

static inline void labelled_truncate(Labelled *l, int32_t *length, int64_t room) {
    if (*length <= room) return;
    *length = (int32_t)room;
    l->truncated++;
}

/* Leaves out the gold answers, which only TPO trains on, and warns if there are any. Call it before labelled_fit(). */
static inline void labelled_drop_golds(Labelled *l) {
    const bool preference = l->kind == RECORD_PREFERENCE;
    const int64_t golds = preference ? l->ranked.golds : l->examples.golds;
    shard_warn_golds(l->shard, golds);
    for (int64_t i = 0; preference && i < l->count; i++) l->ranked.record[i].gold = (RankedCompletion){0};
    l->ranked.golds = l->examples.golds = 0;
}

/* Fits a ranking. Returns false if it is left out. */
static inline bool labelled_fit_ranking(Labelled *l, Ranked *q, int64_t max_length, FitKind fit) {
    const int64_t room = max_length - q->prompt_len;
    if (fit == FIT_DROP) return ranked_longest(q) <= room;
    if (room < 1) return false;
    for (int32_t k = 0; k < q->count; k++) labelled_truncate(l, &q->completion[k].count, room);
    labelled_truncate(l, &q->gold.count, room);
    return true;
}

/* Fits a completion with labels. Returns false if it is left out. */
static inline bool labelled_fit_example(Labelled *l, Example *x, int64_t max_length, FitKind fit) {
    const int64_t room = max_length - x->prompt_len;
    if (fit == FIT_TRUNCATE) {
        if (room < 1) return false;
        labelled_truncate(l, &x->completion_len, room);
        return true;
    }
    if (l->kind == RECORD_UNPAIRED) return x->completion_len <= room;
    const int32_t steps = x->labels;
    while (x->labels && x->at[x->labels - 1] >= room) x->labels--;
    if (!x->labels) return false;
    l->truncated += x->labels < steps;
    x->completion_len = x->at[x->labels - 1] + 1; /* nothing is read after the last label */
    return true;
}

static inline void labelled_warn(const Labelled *l, int64_t max_length, FitKind fit) {
    const char *name = l->shard->name;
    const long long dropped = l->dropped, all = l->all, truncated = l->truncated, max = max_length;
    if (dropped && fit == FIT_DROP)
        warn("%s: %lld of %lld records are left out: they have no completion, or are longer than %lld tokens", name,
             dropped, all, max);
    if (dropped && fit == FIT_TRUNCATE)
        warn("%s: %lld of %lld records are left out: their prompt is empty or leaves no room within %lld tokens", name,
             dropped, all, max);
    if (truncated && fit == FIT_DROP)
        warn("%s: %lld solutions are longer than %lld tokens and lose their last steps", name, truncated, max);
    if (truncated && fit == FIT_TRUNCATE)
        warn("%s: %lld completions exceed %lld tokens with their prompt and were truncated", name, truncated, max);
}

/* Fits all records to max_length tokens of prompt and completion. Fails if none is left. */
static inline bool labelled_fit(Labelled *l, int64_t max_length, FitKind fit, Error *e) {
    const bool preference = l->kind == RECORD_PREFERENCE;
    int64_t count = 0;
    for (int64_t i = 0; i < l->count; i++) {
        if (preference) {
            Ranked q = l->ranked.record[i];
            if (labelled_fit_ranking(l, &q, max_length, fit)) l->ranked.record[count++] = q;
        } else {
            Example x = l->examples.example[i];
            if (labelled_fit_example(l, &x, max_length, fit)) l->examples.example[count++] = x;
        }
    }
    *(preference ? &l->ranked.count : &l->examples.count) = l->count = count;
    l->dropped = l->all - count;
    if (!count)
        return error_set(e, "%s: no record is left: none of %lld fits into %lld tokens", l->shard->name,
                         (long long)l->all, (long long)max_length);
    labelled_warn(l, max_length, fit);
    return true;
}

#endif
