/* examples.h - packed completions with labels, for KTO and for outcome and process reward models.
 *
 *   unpaired shard   one label per completion, at its last token: 1 if it is good
 *   step shard       one label per step of a solution, at the step's last token: 1 if it is right so far
 *
 *     rows   p p p p | c c c c c        a prompt and its completion, a family of two segments (batch.h)
 *     label            .   1   0
 *
 * Examples holds the records as they are trained on. A record whose prompt leaves no room for a completion under
 * max_length is dropped and counted (dropped). A completion that is too long is truncated and counted (cut): an
 * unpaired completion keeps its label; a solution loses the steps that no longer fit and is dropped if none is left.
 * Labels other than 0 and 1 are rejected.
 *
 *     Examples x;
 *     if (!examples_open(&x, "labelled.shard", RECORD_UNPAIRED, 1024, &e)) die("%s", e.text);
 *     for (int64_t i = 0; i < x.count; i++) {
 *         const Example *p = examples_get(&x, i);
 *         if (!example_fits(&batch, p)) run(&batch);       // process the batch and clear it
 *         example_pack_scores(&batch, p);                  // one target per label; or example_pack(): one per token
 *     }
 */
#ifndef LLMC_RECORDS_EXAMPLES_H
#define LLMC_RECORDS_EXAMPLES_H

#include "../model/pack.h"
#include "shard.h"

typedef struct Example {
    const int32_t *prompt, *completion; /* tokens, valid as long as the Examples */
    int32_t prompt_len, completion_len;
    int32_t labels;       /* number of labels, at least 1 */
    const int32_t *at;    /* (labels) index of each label's token in the completion, increasing */
    const uint8_t *label; /* (labels) 1 good, 0 bad */
} Example;

typedef struct Examples {
    Shard shard;
    int64_t count;                /* kept records */
    int64_t labels, good;         /* number of their labels, and of labels that are 1 */
    int64_t dropped, cut;         /* dropped records; truncated completions */
    int32_t longest, most_labels; /* maximum rows and maximum labels of a record */
    int32_t *tokens, *at;         /* of all records, concatenated */
    uint8_t *label;
    Example *example; /* (count) */
} Examples;

static inline void examples_close(Examples *x) {
    shard_close(&x->shard);
    free(x->tokens), free(x->at), free(x->label), free(x->example);
    *x = (Examples){0};
}

static inline const Example *examples_get(const Examples *x, int64_t i) { return &x->example[i]; }

/* Fills in q's labels from record r, whose completion is truncated to q->completion_len. at, label: storage for
 * them. */
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
        if (mark > 2) return false;
        at[q->labels] = k;
        label[q->labels++] = (uint8_t)(mark - 1);
    }
    return true;
}

static inline bool examples_read(Examples *x, int32_t max_length, Error *e) {
    Record r = {0};
    const Shard *s = &x->shard;
    int32_t *token = x->tokens, *at = x->at;
    uint8_t *label = x->label;
    bool ok = true;
    for (int64_t i = 0; ok && i < s->count; i++) {
        if (!(ok = shard_record(s, i, &r, e))) break;
        const int32_t whole = r.count - r.prompt, room = max_length - r.prompt;
        Example q = {.prompt = token, .prompt_len = r.prompt, .completion = token + r.prompt};
        q.completion_len = whole < room ? whole : room;
        if (r.prompt >= 1 && q.completion_len >= 1 && !example_labels(&q, s->kind, &r, at, label))
            ok = error_set(e, "%s: record %lld has a label above 1, expected 0 (bad) or 1 (good)", s->name,
                           (long long)i);
        x->dropped += !q.labels;
        if (!q.labels) continue;
        memcpy(token, r.tokens, (size_t)r.count * sizeof *token);
        x->example[x->count++] = q;
        x->cut += whole > room;
        x->labels += q.labels;
        for (int32_t k = 0; k < q.labels; k++) x->good += label[k];
        if (q.labels > x->most_labels) x->most_labels = q.labels;
        if (q.prompt_len + q.completion_len > x->longest) x->longest = q.prompt_len + q.completion_len;
        token += r.count;
        at += q.labels;
        label += q.labels;
    }
    record_free(&r);
    if (ok && !x->count)
        ok = error_set(
            e,
            "%s: no record is left to train on: %lld records, %lld dropped (no labelled completion fits under %d tokens)",
            s->name, (long long)s->count, (long long)x->dropped, max_length);
    return ok;
}

/* kind: RECORD_UNPAIRED or RECORD_STEP; max_length: maximum tokens of a prompt with its completion. Fails on a shard of
 * another kind, with other labels, or without a record to train on. */
static inline bool examples_open(Examples *x, const char *path, RecordKind kind, int32_t max_length, Error *e) {
    *x = (Examples){0};
    if (!shard_open(&x->shard, path, e)) return false;
    const Shard *s = &x->shard;
    bool ok = s->kind == kind;
    if (!ok)
        error_set(e, "%s: contains %s records, expected %s records", path, record_kind_name(s->kind),
                  record_kind_name(kind));
    const size_t tokens = (size_t)s->total_tokens + 1;
    x->tokens = (int32_t *)xcalloc(tokens, sizeof *x->tokens);
    x->at = (int32_t *)xcalloc(tokens, sizeof *x->at);
    x->label = (uint8_t *)xcalloc(tokens, sizeof *x->label);
    x->example = (Example *)xcalloc((size_t)s->count + 1, sizeof *x->example);
    if (ok && examples_read(x, max_length, e)) return true;
    examples_close(x);
    return false;
}

/* Whether the whole record fits into the rest of the batch; every token has a row. */
static inline bool example_fits(const Batch *b, const Example *p) {
    return batch_fits(b, (int64_t)p->prompt_len + p->completion_len, p->completion_len, 2);
}

/* Packs the record with one target per token of the completion, in order. */
static inline void example_pack(Batch *b, const Example *p) {
    const int prompt = batch_segment(b, p->prompt, p->prompt_len, 0, -1);
    batch_completion(b, prompt, p->completion, p->completion_len);
}

/* Packs the record with one target per label, in order: the rows at which the score head is read. */
static inline void example_pack_scores(Batch *b, const Example *p) {
    const int prompt = batch_segment(b, p->prompt, p->prompt_len, 0, -1);
    const int answer = batch_segment(b, p->completion, p->completion_len, p->prompt_len, prompt);
    for (int32_t k = 0; k < p->labels; k++) batch_target(b, b->segment[answer].start + p->at[k], 0);
}

#endif
