/* loss_batch.h - runs batches of records, windows or samples and adds up their losses.
 *
 *     loss_open(&ev, &w, &sums, 4096, longest);
 *     loss_make_room(&w, &sums, rows, targets);
 *     int32_t before = w.batch.targets;
 *     batch_sequence(&w.batch, ids, mask, rows);   // model/pack.h
 *     loss_end_unit(&w, &sums, before);
 *     loss_run(&w, &sums);                         // the last batch
 *     loss_close(&w, &sums);
 */
#ifndef LLMC_EVALUATE_LOSS_BATCH_H
#define LLMC_EVALUATE_LOSS_BATCH_H

#include "../base/error.h"         /* xcalloc, die, Error */
#include "../base/io.h"            /* writer_open */
#include "../model/batch.h"        /* Batch */
#include "../model/model.h"        /* model_set_longest, model_sync */
#include "../model/model_fits.h"   /* FitSide, fit_model */
#include "../model/pack.h"         /* batch_clear, batch_fits, batch_free, batch_new */
#include "../model/transformer.h"  /* ModelOutput, model_forward */
#include "../model/workspace.h"    /* workspace_free, workspace_new */
#include "../rollout/comparison.h" /* Comparison, comparison_close, comparison_open, comparison_run */
#include "evaluator.h"             /* EvaluateOptions, Evaluator */
#include "loss_sums.h"             /* LossSums */
#include "loss_work.h"             /* LossWork, loss_token_bytes */
#include "reference_figures.h"     /* reference_compare */

/* Runs the batch, adds its results to the sums and clears it. */
static inline void loss_run(LossWork *w, LossSums *l) {
    Error e;
    const Batch *b = &w->batch;
    const ModelOutput out = {.logp = w->logp, .entropy = w->entropy, .argmax = w->argmax};
    if (!b->targets) return;
    if (w->other) comparison_run(w->other, &w->ev->model.model, &w->space, b, w->temperature, &out);
    else model_forward(&w->ev->model.model, &w->space, b, w->temperature, &out);
    if (!model_sync(&w->ev->model.model, &e)) die("%s", e.text);
    if (w->other) reference_compare(w, l->unit);
    memset(l->unit_nats, 0, (size_t)l->unit_of_batch * sizeof(double));
    memset(l->unit_targets, 0, (size_t)l->unit_of_batch * sizeof(double));
    for (int32_t r = 0; r < b->targets; r++) {
        const double nats = -(double)w->logp[r], bytes = loss_token_bytes(w, b->target_token[r]);
        l->nats += nats;
        l->entropy += w->entropy[r];
        l->right += w->argmax[r] == b->target_token[r];
        l->bytes += bytes;
        l->text_nats += bytes > 0 ? nats : 0;
        l->unit_nats[l->unit[r]] += nats;
        l->unit_targets[l->unit[r]]++;
    }
    for (int32_t u = 0; u < l->unit_of_batch; u++) {
        const double x = l->unit_nats[u], n = l->unit_targets[u];
        l->squares[0] += x * x;
        l->squares[1] += x * n;
        l->squares[2] += n * n;
    }
    l->targets += b->targets;
    l->units += l->unit_of_batch;
    l->rows += b->rows;
    l->unit_of_batch = 0;
    batch_clear(&w->batch);
}

/* Makes room in the batch for a unit of this many rows and targets; runs the batch first if it is full. */
static inline void loss_make_room(LossWork *w, LossSums *l, int32_t rows, int32_t targets) {
    if (!batch_fits(&w->batch, rows, targets, 1)) loss_run(w, l);
}

/* Marks the targets added since `before` as one unit. */
static inline void loss_end_unit(const LossWork *w, LossSums *l, int32_t before) {
    for (int32_t r = before; r < w->batch.targets; r++) l->unit[r] = l->unit_of_batch;
    l->unit_of_batch += w->batch.targets > before;
}

/* longest: positions of the longest sequence. */
static inline void loss_open(Evaluator *ev, LossWork *w, LossSums *l, int rows, int32_t longest) {
    EvaluateOptions *o = ev->o;
    Error e;
    const size_t n = (size_t)rows;
    *l = (LossSums){.unit = (int32_t *)xcalloc(n, sizeof(int32_t)),
                    .unit_nats = (double *)xcalloc(n, sizeof(double)),
                    .unit_targets = (double *)xcalloc(n, sizeof(double))};
    *w = (LossWork){.ev = ev,
                    .temperature = 1,
                    .batch = batch_new(rows, rows, rows),
                    .logp = (float *)xcalloc(n, sizeof(float)),
                    .entropy = (float *)xcalloc(n, sizeof(float)),
                    .argmax = (int32_t *)xcalloc(n, sizeof(int32_t))};
    model_set_longest(&ev->model.model, longest);
    if (!workspace_new(&w->space, &ev->model.model, rows, rows, rows, false, 0, &e))
        die("%s; lower --micro-tokens", e.text);
    if (!o->reference) return;
    const FitSide side = fit_model(ev->model.name, &ev->model.model.config, &ev->model.file);
    w->other = (Comparison *)xcalloc(1, sizeof *w->other);
    if (!comparison_open(w->other, o->reference, &ev->model.model, &side, rows, longest, &e)) die("%s", e.text);
    if ((o->tokens && !writer_open(&w->tokens, o->tokens, &e)) ||
        (o->report && !writer_open(&w->page_file, o->report, &e)))
        die("%s", e.text);
}

static inline void loss_close(LossWork *w, LossSums *l) {
    if (w->other) comparison_close(w->other);
    free(w->other);
    workspace_free(&w->space, &w->ev->model.model), batch_free(&w->batch);
    free(w->logp), free(w->entropy), free(w->argmax);
    free(l->unit), free(l->unit_nats), free(l->unit_targets);
}

#endif
