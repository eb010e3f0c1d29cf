/* examples.h - packed completions with labels, for KTO and for outcome and process reward models.
 *
 *   unpaired shard   one label per completion, at its last token: 1 if it is good
 *   step shard       one label per step of a solution, at the step's last token: 1 if it is right so far
 *
 *     rows   p p p p | c c c c c        a prompt and its completion, a family of two segments (batch.h)
 *     label            .   1   0
 *
 * Examples holds the records; one without a prompt, a completion or a label is left out and counted (dropped).
 * labelled.h fits them to a maximum length. The label of a step may also be a probability (step_share).
 *
 *     Examples x;
 *     if (!examples_open(&x, "labelled.shard", RECORD_UNPAIRED, false, &e)) die("%s", e.text);
 *     MicroPlan plan = {0};
 *     micro_plan_begin(&plan, &batch, 0);
 *     for (int64_t i = 0; i < x.count; i++) micro_plan_add(&plan, example_size(&x.example[i]));
 *     for (int32_t i = plan.first[0]; i < plan.first[1]; i++)           // the first micro-batch
 *         example_pack_scores(&batch, &x.example[i]);      // one target per label; or example_pack(): one per token
 */
#ifndef LLMC_RECORDS_EXAMPLES_H
#define LLMC_RECORDS_EXAMPLES_H

#include "../base/error.h"       /* xcalloc, Error, error_set */
#include "../model/batch.h"      /* Batch */
#include "../model/micro_plan.h" /* BatchSize */
#include "../model/pack.h"       /* batch_segment, batch_completion, batch_target */
#include "shard.h"               /* RECORD_PREFERENCE, Record, RecordKind, Shard, ... */

typedef struct Example {
    const int32_t *prompt, *completion; /* tokens, valid as long as the Examples */
    int32_t prompt_len, completion_len;
    int32_t labels;       /* number of labels, at least 1 */
    const int32_t *at;    /* (labels) index of each label's token in the completion, increasing */
    const uint8_t *label; /* (labels) 1 good, 0 bad; of steps also probabilities, see step_share() */
    int file;             /* number of its file among those of the shard */
} Example;

typedef struct Examples {
    Shard shard;
    int64_t count, dropped; /* examples; those left out */
    int64_t golds;          /* pairs with a gold answer, which is not used */
    int32_t *tokens, *at;   /* of all examples, concatenated */
    uint8_t *label;
    Example *example; /* (count) */
} Examples;

static inline void examples_close(Examples *x) {
    shard_close(&x->shard);
    free(x->tokens), free(x->at), free(x->label), free(x->example);
    *x = (Examples){0};
}

/* Fills in q's labels from record r. at, label: storage for them. Returns false if a label is none. */
static inline bool example_labels(Example *q, RecordKind kind, const Record *r, int32_t *at, uint8_t *label) {
    q->at = at;
    q->label = label;
    if (kind == RECORD_UNPAIRED) {
        at[0] = q->completion_len - 1;
        label[0] = (uint8_t)r->label;
        q->labels = 1;
        return true;
    }
    for (int32_t k = 0; k < q->completion_len; k++) {
        const uint8_t mark = r->mask[r->prompt + k];
        if (!mark) continue;
        if (mark > 3 + STEP_SHARES) return false;
        at[q->labels] = k;
        label[q->labels++] = (uint8_t)(mark - 1);
    }
    return true;
}

/* Adds both completions of a preference pair, the chosen one as good and the rejected one as bad (TRL's
 * unpair_preference_dataset). They share the prompt at `token`. */
static inline void examples_unpair(Examples *x, const Record *r, int file, const int32_t *token, int32_t *at,
                                   uint8_t *label) {
    const int32_t *completion = token + r->prompt;
    for (int k = 0; k < 2; completion += r->length[k], k++) {
        if (r->prompt < 1) {
            x->dropped++;
            continue;
        }
        at[k] = r->length[k] - 1;
        label[k] = k == 0;
        x->example[x->count++] = (Example){.prompt = token,
                                           .prompt_len = r->prompt,
                                           .completion = completion,
                                           .completion_len = r->length[k],
                                           .labels = 1,
                                           .at = at + k,
                                           .label = label + k,
                                           .file = file};
    }
}

static inline bool examples_read(Examples *x, Error *e) {
    Record r = {0};
    const Shard *s = &x->shard;
    int32_t *token = x->tokens, *at = x->at;
    uint8_t *label = x->label;
    bool ok = true;
    for (int64_t i = 0; ok && i < s->count; i++) {
        if (!(ok = shard_record(s, i, &r, e))) break;
        if (s->kind == RECORD_PREFERENCE) {
            if (r.completions > 2) {
                ok = error_set(e, "%s: record %lld ranks %d completions, expected pairs; train_rm trains on rankings",
                               s->name, (long long)i, (int)r.completions);
                break;
            }
            x->golds += r.gold > 0;
            memcpy(token, r.tokens, (size_t)r.count * sizeof *token);
            examples_unpair(x, &r, shard_file(s, i), token, at, label);
            token += r.count;
            at += 2;
            label += 2;
            continue;
        }
        Example q = {.prompt = token, .prompt_len = r.prompt, .completion = token + r.prompt, .file = shard_file(s, i)};
        q.completion_len = r.count - r.prompt;
        if (r.prompt >= 1 && q.completion_len >= 1 && !example_labels(&q, s->kind, &r, at, label))
            ok = error_set(e, "%s: record %lld has a label that is neither good, bad nor a probability", s->name,
                           (long long)i);
        x->dropped += !q.labels;
        if (!q.labels) continue;
        memcpy(token, r.tokens, (size_t)r.count * sizeof *token);
        x->example[x->count++] = q;
        token += r.count;
        at += q.labels;
        label += q.labels;
    }
    record_free(&r);
    if (ok && !x->count)
        ok = error_set(e, "%s: no record is left to train on: each of the %lld lacks a prompt, a completion or a label",
                       s->name, (long long)s->count);
    return ok;
}

/* Opens n files as one shard. kind: RECORD_UNPAIRED or RECORD_STEP; unpair: a preference shard is taken as well, each
 * pair as two examples. Fails on a shard of another kind, with other labels, or without a record to train on. */
static inline bool examples_open_all(Examples *x, const char *const *paths, int n, RecordKind kind, bool unpair,
                                     Error *e) {
    *x = (Examples){0};
    if (!shard_open_all(&x->shard, paths, n, false, e)) return false;
    const Shard *s = &x->shard;
    bool ok = s->kind == kind || (unpair && s->kind == RECORD_PREFERENCE);
    if (!ok)
        error_set(e, "%s: contains %s records, expected %s records", s->name, record_kind_name(s->kind),
                  record_kind_name(kind));
    const size_t count = (size_t)s->count * (s->kind == RECORD_PREFERENCE ? 2 : 1),
                 tokens = (size_t)s->total_tokens + count + 1; /* also for pairs without a completion */
    x->tokens = (int32_t *)xcalloc(tokens, sizeof *x->tokens);
    x->at = (int32_t *)xcalloc(tokens, sizeof *x->at);
    x->label = (uint8_t *)xcalloc(tokens, sizeof *x->label);
    x->example = (Example *)xcalloc(count + 1, sizeof *x->example);
    if (ok && examples_read(x, e)) return true;
    examples_close(x);
    return false;
}

static inline bool examples_open(Examples *x, const char *path, RecordKind kind, bool unpair, Error *e) {
    return examples_open_all(x, &path, 1, kind, unpair, e);
}

/* The part of a batch that a record takes; every token has a row. */
static inline BatchSize example_size(const Example *p) {
    return (BatchSize){(int64_t)p->prompt_len + p->completion_len, p->completion_len, 2};
}

/* Packs the record with one target per token of the completion, in order. */
static inline void example_pack(Batch *b, const Example *p) {
    const int prompt = batch_segment(b, p->prompt, p->prompt_len, 0, -1);
    batch_completion(b, prompt, p->completion, NULL, p->completion_len);
}

/* Packs the record with one target per label, in order: the rows whose scores are read. */
static inline void example_pack_scores(Batch *b, const Example *p) {
    const int prompt = batch_segment(b, p->prompt, p->prompt_len, 0, -1);
    const int completion = batch_segment(b, p->completion, p->completion_len, p->prompt_len, prompt);
    for (int32_t k = 0; k < p->labels; k++) batch_target(b, b->segment[completion].start + p->at[k], 0);
}

#endif
