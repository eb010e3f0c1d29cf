/* pairs.h - packed preference pairs: both completions share one copy of their prompt.
 *
 *     rows   p p p p | c c c | r r        one family of batch.h: prompt, chosen, rejected
 *
 * If the argument `shared` is false, each completion gets its own copy of the prompt, as in libraries that use padding;
 * results agree up to rounding.
 *
 * Pairs holds the records of a preference shard; a record without a prompt or without one of the completions is left
 * out and counted (dropped). labelled.h fits them to a maximum length.
 *
 *     Pairs pairs;
 *     if (!pairs_open(&pairs, "prefs.shard", &e)) die("%s", e.text);
 *     MicroPlan plan = {0};
 *     micro_plan_begin(&plan, &batch, 0);
 *     for (int64_t i = 0; i < pairs.count; i++) micro_plan_add(&plan, pair_size(&pairs.pair[i], true));
 *     for (int32_t i = plan.first[0]; i < plan.first[1]; i++)               // the first micro-batch
 *         pair_pack_scores(&batch, &pairs.pair[i], true);                             // targets: both last rows
 */
#ifndef LLMC_RECORDS_PAIRS_H
#define LLMC_RECORDS_PAIRS_H

#include "../base/error.h"       /* Error, error_set, xcalloc */
#include "../model/batch.h"      /* Batch */
#include "../model/micro_plan.h" /* BatchSize */
#include "../model/pack.h"       /* batch_segment, batch_last_row, batch_target */
#include "shard.h"               /* Shard, RECORD_PREFERENCE, Record, record_free, ... */

typedef struct Pair {
    const int32_t *prompt, *chosen, *rejected; /* tokens, valid as long as the Pairs */
    int32_t prompt_len, chosen_len, rejected_len;
    float margin; /* how much better chosen is; 0: unknown */
    int file;     /* number of its file among those of the shard */
    /* 1: the token is a target, 0: it is context; NULL: all are targets */
    const uint8_t *chosen_mask, *rejected_mask;
} Pair;

typedef struct Pairs {
    Shard shard;
    int64_t count, dropped; /* pairs; records left out */
    int32_t *tokens;        /* of all pairs, concatenated */
    Pair *pair;             /* (count) */
} Pairs;

static inline void pairs_close(Pairs *p) {
    shard_close(&p->shard);
    free(p->tokens), free(p->pair);
    *p = (Pairs){0};
}

/* Opens n files as one shard. Fails on a shard of another kind or without a pair to train on. */
static inline bool pairs_open_all(Pairs *p, const char *const *paths, int n, Error *e) {
    Record r = {0};
    *p = (Pairs){0};
    if (!shard_open_all(&p->shard, paths, n, false, e)) return false;
    const Shard *s = &p->shard;
    if (s->kind != RECORD_PREFERENCE) {
        error_set(e, "%s: contains %s records, expected preference records", s->name, record_kind_name(s->kind));
        pairs_close(p);
        return false;
    }
    p->tokens = (int32_t *)xcalloc((size_t)s->total_tokens + 1, sizeof *p->tokens);
    p->pair = (Pair *)xcalloc((size_t)s->count + 1, sizeof *p->pair);
    int32_t *at = p->tokens;
    bool ok = true;
    for (int64_t i = 0; ok && i < s->count; i++) {
        if (!(ok = shard_record(s, i, &r, e))) break;
        if (r.prompt < 1 || r.chosen < 1 || r.rejected < 1) {
            p->dropped++;
            continue;
        }
        Pair *q = &p->pair[p->count++];
        memcpy(at, r.tokens, (size_t)r.count * sizeof *at);
        q->prompt = at;
        q->prompt_len = r.prompt;
        q->chosen = at + r.prompt;
        q->chosen_len = r.chosen;
        q->rejected = q->chosen + r.chosen;
        q->rejected_len = r.rejected;
        q->margin = r.margin;
        q->file = shard_file(s, i);
        at += r.count;
    }
    record_free(&r);
    if (ok && !p->count)
        ok = error_set(e, "%s: no pair is left to train on: each of the %lld records lacks a prompt or a completion",
                       s->name, (long long)s->count);
    if (!ok) pairs_close(p);
    return ok;
}

static inline bool pairs_open(Pairs *p, const char *path, Error *e) { return pairs_open_all(p, &path, 1, e); }

/* The part of a batch that a pair takes. Scores need whole completions, so every token has a row. */
static inline BatchSize pair_size(const Pair *p, bool shared) {
    const int64_t completions = (int64_t)p->chosen_len + p->rejected_len;
    return (BatchSize){completions + (shared ? 1 : 2) * (int64_t)p->prompt_len, completions, 4};
}

/* Packs the pair with two targets, from which the scores are read: the last rows of the chosen and rejected
 * completion. */
static inline void pair_pack_scores(Batch *b, const Pair *p, bool shared) {
    const int prompt = batch_segment(b, p->prompt, p->prompt_len, 0, -1);
    const int chosen = batch_segment(b, p->chosen, p->chosen_len, p->prompt_len, prompt);
    batch_target(b, batch_last_row(b, chosen), 0);
    const int again = shared ? prompt : batch_segment(b, p->prompt, p->prompt_len, 0, -1);
    const int rejected = batch_segment(b, p->rejected, p->rejected_len, p->prompt_len, again);
    batch_target(b, batch_last_row(b, rejected), 0);
}

#endif
