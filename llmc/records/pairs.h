/* pairs.h - packed preference pairs: both completions share one copy of their prompt.
 *
 *     rows   p p p p | c c c | r r        one family of batch.h: prompt, chosen, rejected
 *
 * With `shared` false, each completion gets its own copy of the prompt, as in libraries that use padding; results agree
 * up to rounding.
 *
 * Pairs holds the records of a preference shard as they are trained on. A pair whose prompt leaves no room for a
 * completion under max_length is dropped and counted (dropped). A completion that is too long is truncated and counted
 * (cut).
 *
 *     Pairs pairs;
 *     if (!pairs_open(&pairs, "prefs.shard", 1024, &e)) die("%s", e.text);
 *     for (int64_t i = 0; i < pairs.count; i++) {
 *         const Pair *p = pairs_get(&pairs, i);
 *         if (!pair_fits(&batch, p, true)) run(&batch);            // process the batch and clear it
 *         pair_pack_scores(&batch, p, true);                       // targets: the last rows of both completions
 *     }
 */
#ifndef LLMC_RECORDS_PAIRS_H
#define LLMC_RECORDS_PAIRS_H

#include "../model/pack.h"
#include "shard.h"

typedef struct Pair {
    const int32_t *prompt, *chosen, *rejected; /* tokens, valid as long as the Pairs */
    int32_t prompt_len, chosen_len, rejected_len;
    float margin; /* how much better chosen is; 0: unknown */
} Pair;

typedef struct Pairs {
    Shard shard;
    int64_t count;        /* kept pairs */
    int64_t dropped, cut; /* dropped pairs; truncated completions */
    int32_t *tokens;      /* of all kept pairs, concatenated */
    Pair *pair;           /* (count) */
} Pairs;

static inline void pairs_close(Pairs *p) {
    shard_close(&p->shard);
    free(p->tokens), free(p->pair);
    *p = (Pairs){0};
}

static inline const Pair *pairs_get(const Pairs *p, int64_t i) { return &p->pair[i]; }

/* max_length: maximum tokens of a prompt with a completion. Fails on a shard of another kind or without a pair to train
 * on. */
static inline bool pairs_open(Pairs *p, const char *path, int32_t max_length, Error *e) {
    Record r = {0};
    *p = (Pairs){0};
    if (!shard_open(&p->shard, path, e)) return false;
    const Shard *s = &p->shard;
    if (s->kind != RECORD_PREFERENCE) {
        error_set(e, "%s: contains %s records, expected preference records", path, record_kind_name(s->kind));
        pairs_close(p);
        return false;
    }
    p->tokens = (int32_t *)xcalloc((size_t)s->total_tokens + 1, sizeof *p->tokens);
    p->pair = (Pair *)xcalloc((size_t)s->count + 1, sizeof *p->pair);
    int32_t *at = p->tokens;
    bool ok = true;
    for (int64_t i = 0; ok && i < s->count; i++) {
        if (!(ok = shard_record(s, i, &r, e))) break;
        const int32_t room = max_length - r.prompt;
        if (r.prompt < 1 || r.chosen < 1 || r.rejected < 1 || room < 1) {
            p->dropped++;
            continue;
        }
        Pair *q = &p->pair[p->count++];
        memcpy(at, r.tokens, (size_t)r.count * sizeof *at);
        q->prompt = at;
        q->prompt_len = r.prompt;
        q->chosen = at + r.prompt;
        q->chosen_len = r.chosen < room ? r.chosen : room;
        q->rejected = q->chosen + r.chosen;
        q->rejected_len = r.rejected < room ? r.rejected : room;
        q->margin = r.margin;
        p->cut += (r.chosen > room) + (r.rejected > room);
        at += r.count;
    }
    record_free(&r);
    if (ok && !p->count)
        ok = error_set(
            e, "%s: no pair is left to train on: %lld records, %lld dropped (no completion fits under %d tokens)", path,
            (long long)s->count, (long long)p->dropped, max_length);
    if (!ok) pairs_close(p);
    return ok;
}

/* Whether the pair fits into the rest of the batch. Scores need whole completions, so every token has a row. */
static inline bool pair_fits(const Batch *b, const Pair *p, bool shared) {
    const int64_t answers = (int64_t)p->chosen_len + p->rejected_len;
    return batch_fits(b, answers + (shared ? 1 : 2) * (int64_t)p->prompt_len, answers, 4);
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
