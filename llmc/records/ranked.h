/* ranked.h - packed rankings: two or more completions of one prompt, from the best to the worst, which share one copy of
 * the prompt. A pair is a ranking of two.
 *
 *     rows   p p p p | c c c | d d | e e e        one family of batch.h: prompt, best, second, third completion
 *
 * If the argument `shared` is false, each completion gets its own copy of the prompt, as in libraries that use padding;
 * results agree up to rounding.
 *
 * RankedRecords holds the records of a preference shard; a record without a prompt is left out and counted (dropped).
 * labelled.h fits them to a maximum length.
 *
 *     RankedRecords ranked;
 *     if (!ranked_open(&ranked, "prefs.shard", &e)) die("%s", e.text);
 *     MicroPlan plan = {0};
 *     micro_plan_begin(&plan, &batch, 0);
 *     for (int64_t i = 0; i < ranked.count; i++) micro_plan_add(&plan, ranked_size(&ranked.record[i], true));
 *     for (int32_t i = plan.first[0]; i < plan.first[1]; i++)               // the first micro-batch
 *         ranked_pack_scores(&batch, &ranked.record[i], true);          // targets: the last row of each completion
 */
#ifndef LLMC_RECORDS_RANKED_H
#define LLMC_RECORDS_RANKED_H

#include "../base/error.h"       /* Error, error_set, xcalloc */
#include "../model/batch.h"      /* Batch */
#include "../model/micro_plan.h" /* BatchSize */
#include "../model/pack.h"       /* batch_segment, batch_last_row, batch_target */
#include "pairs.h"               /* Pair */
#include "shard.h"               /* Shard, RECORD_PREFERENCE, Record, record_free, ... */

typedef struct RankedCompletion {
    const int32_t *tokens; /* (count) */
    int32_t count;
} RankedCompletion;

typedef struct Ranked {
    const int32_t *prompt; /* tokens, valid as long as the RankedRecords */
    int32_t prompt_len;
    int32_t count;                /* number of completions, at least 2 */
    RankedCompletion *completion; /* (count) from the best to the worst */
    RankedCompletion gold;        /* a gold answer, for TPO; empty: there is none */
    float margin;                 /* of a pair: how much better the first is; 0: unknown */
    int file;                     /* number of its file among those of the shard */
} Ranked;

typedef struct RankedRecords {
    Shard shard;
    int64_t count, dropped;       /* rankings; records left out */
    int64_t golds;                /* rankings with a gold answer */
    int64_t longer;               /* rankings of more than two completions */
    int32_t *tokens;              /* of all rankings, concatenated */
    RankedCompletion *completion; /* of all rankings, concatenated */
    Ranked *record;               /* (count) */
} RankedRecords;

static inline void ranked_close(RankedRecords *r) {
    shard_close(&r->shard);
    free(r->tokens), free(r->completion), free(r->record);
    *r = (RankedRecords){0};
}

/* The part of a batch that a ranking takes. Scores need whole completions, so every token has a row. */
static inline BatchSize ranked_size(const Ranked *q, bool shared) {
    int64_t completions = 0;
    for (int32_t k = 0; k < q->count; k++) completions += q->completion[k].count;
    return (BatchSize){completions + (shared ? 1 : q->count) * (int64_t)q->prompt_len, completions,
                       2 * (int64_t)q->count};
}

/* Tokens of the longest completion. */
static inline int32_t ranked_longest(const Ranked *q) {
    int32_t most = 0;
    for (int32_t k = 0; k < q->count; k++)
        if (q->completion[k].count > most) most = q->completion[k].count;
    return most;
}

/* The best and the worst completion as a pair, with the gold answer. */
static inline Pair ranked_pair(const Ranked *q) {
    const RankedCompletion *best = &q->completion[0], *worst = &q->completion[q->count - 1];
    return (Pair){.prompt = q->prompt,
                  .prompt_len = q->prompt_len,
                  .chosen = best->tokens,
                  .chosen_len = best->count,
                  .rejected = worst->tokens,
                  .rejected_len = worst->count,
                  .gold = q->gold.tokens,
                  .gold_len = q->gold.count};
}

/* Adds record r, whose tokens are copied to `at` and whose completions to `completion`. */
static inline void ranked_add(RankedRecords *all, const Record *r, int file, int32_t *at,
                              RankedCompletion *completion) {
    memcpy(at, r->tokens, (size_t)r->count * sizeof *at);
    all->record[all->count++] = (Ranked){.prompt = at,
                                         .prompt_len = r->prompt,
                                         .count = r->completions,
                                         .completion = completion,
                                         .margin = r->margin,
                                         .file = file};
    all->longer += r->completions > 2;
    all->golds += r->gold > 0;
    at += r->prompt;
    for (int32_t k = 0; k < r->completions; at += r->length[k], k++)
        completion[k] = (RankedCompletion){at, r->length[k]};
    if (r->gold) all->record[all->count - 1].gold = (RankedCompletion){at, r->gold};
}

static inline bool ranked_read(RankedRecords *all, Error *e) {
    Record r = {0};
    const Shard *s = &all->shard;
    int32_t *at = all->tokens;
    int64_t completions = 0, capacity = 0;
    bool ok = true;
    for (int64_t i = 0; ok && i < s->count; i++) {
        if (!(ok = shard_record(s, i, &r, e))) break;
        if (r.prompt < 1) {
            all->dropped++;
            continue;
        }
        if (completions + r.completions > capacity) {
            capacity = 2 * capacity + r.completions + 64;
            all->completion = (RankedCompletion *)xrealloc(all->completion, (size_t)capacity, sizeof *all->completion);
        }
        ranked_add(all, &r, shard_file(s, i), at, all->completion + completions);
        completions += r.completions;
        at += r.count;
        if (ranked_size(&all->record[all->count - 1], false).rows > INT32_MAX)
            ok = error_set(e, "%s: record %lld has more than %d tokens with a prompt for each of its %d completions",
                           s->name, (long long)i, INT32_MAX, (int)r.completions);
    }
    record_free(&r);
    completions = 0;
    for (int64_t i = 0; i < all->count; i++) { /* the array has moved as it grew */
        all->record[i].completion = all->completion + completions;
        completions += all->record[i].count;
    }
    return ok;
}

/* Opens n files as one shard. Fails on a shard of another kind or without a record to train on. */
static inline bool ranked_open_all(RankedRecords *all, const char *const *paths, int n, Error *e) {
    *all = (RankedRecords){0};
    if (!shard_open_all(&all->shard, paths, n, false, e)) return false;
    const Shard *s = &all->shard;
    bool ok = s->kind == RECORD_PREFERENCE;
    if (!ok) error_set(e, "%s: contains %s records, expected preference records", s->name, record_kind_name(s->kind));
    all->tokens = (int32_t *)xcalloc((size_t)s->total_tokens + 1, sizeof *all->tokens);
    all->record = (Ranked *)xcalloc((size_t)s->count + 1, sizeof *all->record);
    ok = ok && ranked_read(all, e);
    if (ok && !all->count)
        ok = error_set(e, "%s: no pair is left to train on: each of the %lld records lacks a prompt", s->name,
                       (long long)s->count);
    if (!ok) ranked_close(all);
    return ok;
}

static inline bool ranked_open(RankedRecords *all, const char *path, Error *e) {
    return ranked_open_all(all, &path, 1, e);
}

/* Packs the ranking with a target for each completion, from which its score is read: its last row. */
static inline void ranked_pack_scores(Batch *b, const Ranked *q, bool shared) {
    int prompt = -1;
    for (int32_t k = 0; k < q->count; k++) {
        const RankedCompletion *c = &q->completion[k];
        if (!k || !shared) prompt = batch_segment(b, q->prompt, q->prompt_len, 0, -1);
        batch_target(b, batch_last_row(b, batch_segment(b, c->tokens, c->count, q->prompt_len, prompt)), 0);
    }
}

#endif
