/* text_loss.h - the loss of a model on chat and token shards.
 *
 *     DataFile file;
 *     evaluate_loss(&ev, path, &file, NULL, &sums);    // a token shard that is read from the file
 *     evaluate_loss(&ev, path, NULL, &shard, &sums);   // a chat shard
 *     evaluate_losses(&ev, &shard);                    // each of several files, and all together
 */
#ifndef LLMC_EVALUATE_TEXT_LOSS_H
#define LLMC_EVALUATE_TEXT_LOSS_H

#include "../base/clock.h"        /* clock_seconds */
#include "../base/error.h"        /* die, Error, warn, xmalloc */
#include "../base/program.h"      /* program_stopping */
#include "../model/pack.h"        /* batch_segment, batch_sequence, batch_target */
#include "../records/shard.h"     /* Shard, Record, record_free, shard_record */
#include "../records/tokens.h"    /* TokenShard, token_at, tokens_close, tokens_read */
#include "../rollout/inference.h" /* DataFile, data_file_close, data_file_open */
#include "evaluator.h"            /* evaluator_progress, Evaluator, evaluator_count, EvaluateOptions, ... */
#include "loss_batch.h"           /* loss_end_unit, loss_make_room, loss_run, loss_close, ... */
#include "loss_sums.h"            /* LossSums, loss_report, loss_add */
#include "loss_work.h"            /* LossWork, loss_abort */
#include "reference_figures.h"    /* reference_report */

/* Accumulates the loss on the records of a chat shard. */
static inline void loss_of_chat(LossWork *w, LossSums *l, const Shard *s, int64_t count, int32_t limit) {
    Error e;
    Record r = {0};
    const double start = clock_seconds();
    for (int64_t i = 0; i < count && !program_stopping(); i++) {
        if (!shard_record(s, i, &r, &e)) die("%s", e.text);
        l->cut += r.count > limit;
        if (r.count > limit) r.count = limit;
        loss_make_room(w, l, r.count, r.count);
        const int32_t before = w->batch.targets;
        batch_sequence(&w->batch, r.tokens, w->ev->o->completion_only ? r.mask : NULL, r.count);
        loss_end_unit(w, l, before);
        if (!before) evaluator_progress(i + 1, count + 1, "records", start);
    }
    loss_run(w, l);
    evaluator_progress(count, count, "records", start);
    record_free(&r);
}

/* Accumulates the loss on windows of T tokens. The last target of a window is the first token of the next window. */
static inline void loss_of_windows(LossWork *w, LossSums *l, const TokenShard *t, int64_t windows, int32_t T) {
    int32_t *ids = (int32_t *)xmalloc((size_t)T * sizeof *ids);
    const double start = clock_seconds();
    for (int64_t i = 0; i < windows && !program_stopping(); i++) {
        const int64_t from = i * T, left = t->count - 1 - from;
        const int32_t n = left < T ? (int32_t)left : T;
        for (int32_t k = 0; k < n; k++) ids[k] = token_at(t, from + k);
        loss_make_room(w, l, n, n);
        const int32_t before = w->batch.targets, row = w->batch.rows;
        batch_segment(&w->batch, ids, n, 0, -1);
        for (int32_t k = 0; k < n; k++) batch_target(&w->batch, row + k, token_at(t, from + k + 1));
        loss_end_unit(w, l, before);
        if (!before) evaluator_progress(i + 1, windows + 1, "windows", start);
    }
    loss_run(w, l);
    evaluator_progress(windows, windows, "windows", start);
    free(ids);
}

/* Evaluates the loss on a chat shard, or on a token shard, read from f, if chat is NULL. Adds its sums to *all. */
static inline void evaluate_loss(Evaluator *ev, const char *name, DataFile *f, const Shard *chat, LossSums *all) {
    EvaluateOptions *o = ev->o;
    Error e;
    LossWork w;
    LossSums l;
    TokenShard t = {0};
    const int32_t context = ev->model.model.config.context;
    const int32_t T = o->max_length && o->max_length < context ? (int32_t)o->max_length : context;
    int64_t units;
    if (chat) {
        units = chat->count;
    } else {
        if (!tokens_read(&t, &f->in, ev->model.model.config.vocab, &e)) die("%s", e.text);
        units = t.count > 1 ? (t.count - 1 + T - 1) / T : 0;
    }
    if (!units) die("%s: the shard is empty", name);
    units = evaluator_first(ev, units);
    const int32_t longest = chat && chat->longest < T ? chat->longest : T;
    const double start = clock_seconds();
    loss_open(ev, &w, &l, o->micro_tokens > longest ? (int)o->micro_tokens : longest, longest);
    if (chat) loss_of_chat(&w, &l, chat, units, T);
    else loss_of_windows(&w, &l, &t, units, T);
    if (!l.targets || program_stopping()) loss_abort(&w);
    if (!l.targets) die("%s: no record has a token to predict%s", name, l.cut ? " within the model's context" : "");
    if (l.cut)
        warn("%s: %lld of %lld records are longer than %d tokens and were truncated", name, (long long)l.cut,
             (long long)units, T);
    if (chat) evaluator_count(ev->result, "cut", l.cut);
    loss_report(ev, &l, chat ? "records" : "windows", clock_seconds() - start);
    if (w.other && !program_stopping()) reference_report(&w);
    loss_add(all, &l);
    loss_close(&w, &l);
    tokens_close(&t);
    if (program_stopping()) die("stopped by a signal before the end of %s", name);
}

/* Evaluates the loss on each of several files, and on all. */
static inline void evaluate_losses(Evaluator *ev, const Shard *chat) {
    Error e;
    LossSums all = {0};
    json_t *together = ev->result, *files = json_array();
    const double start = clock_seconds();
    for (int k = 0; k < ev->inputs.count; k++) {
        DataFile f;
        evaluator_begin_file(ev, ev->inputs.path[k]);
        if (chat) evaluate_loss(ev, ev->inputs.path[k], NULL, &chat->part[k], &all);
        else {
            if (!data_file_open(&f, ev->inputs.path[k], &e)) die("%s", e.text);
            evaluate_loss(ev, ev->inputs.path[k], &f, NULL, &all);
            data_file_close(&f);
        }
        evaluator_end_file(ev, files);
    }
    evaluator_begin_all(ev, together, files);
    if (chat) evaluator_count(ev->result, "cut", all.cut);
    loss_report(ev, &all, chat ? "records" : "windows", clock_seconds() - start);
}

#endif
