/* reference_figures.h - the figures of --reference: a second model on the same tokens (llmc/rollout/comparison.h).
 *
 *     reference_compare(&w, owner);         // after each batch; owner: (targets) the sequence of each
 *     reference_report(&w);                 // at the end: the figures, the file of --tokens and the page of --report
 */
#ifndef LLMC_EVALUATE_REFERENCE_FIGURES_H
#define LLMC_EVALUATE_REFERENCE_FIGURES_H

#include "../base/error.h"         /* die, Error, checked_object */
#include "../base/io.h"            /* writer_commit, writer_write */
#include "../base/text.h"          /* TextBuffer, text_format, text_free */
#include "../model/batch.h"        /* Batch */
#include "../report/token_page.h"  /* token_page_figure, token_page_full, TokenRow, token_page_add, ... */
#include "../rollout/comparison.h" /* COMPARISON_ESTIMATORS, COMPARISON_TOP, Comparison, ComparisonSums, ... */
#include "../rollout/inference.h"  /* inference_json_text, json_line */
#include "../text/tokenizer.h"     /* tokenizer_decode */
#include "evaluator.h"             /* evaluator_number, evaluator_count */
#include "loss_work.h"             /* LossWork, loss_abort */

/* Adds target r to the page, with the likeliest tokens in v. first: it is the first of its text. */
static inline void reference_show_token(LossWork *w, int32_t r, int64_t text, bool first, const ComparisonView *v) {
    const Batch *b = &w->batch;
    int32_t start = b->target_row[r];
    TextBuffer word = {0};
    if (token_page_full(&w->page, 1)) return;
    if (w->ev->model.text.present) tokenizer_decode(&w->ev->model.text.tokenizer, &b->target_token[r], 1, true, &word);
    else text_format(&word, "%d ", b->target_token[r]);
    json_t *top = json_array();
    for (int k = 0; k < COMPARISON_TOP && v->top[k] >= 0; k++)
        json_array_append_new(
            top, json_pack("[o,f]", inference_json_text(&w->ev->model, &v->top[k], 1, true), (double)v->p[k]));
    while (first && start > 0 && b->positions[start] > 0) start--;
    token_page_add(&w->page, &(TokenRow){.text = text,
                                         .bytes = word.text,
                                         .n = word.length,
                                         .logp = (double)w->logp[r],
                                         .reference_logp = (double)w->other->apart.logp[r],
                                         .entropy = (double)w->entropy[r],
                                         .kl = (double)w->other->apart.reverse_kl[r],
                                         .rank = v->rank,
                                         .top = top,
                                         .before = first ? inference_json_text(&w->ev->model, b->tokens + start,
                                                                               b->target_row[r] + 1 - start, true)
                                                         : NULL});
    text_free(&word);
}

/* Writes the targets of the batch to the file of --tokens, and keeps them for the page of --report. */
static inline void reference_write_tokens(LossWork *w, const int32_t *unit) {
    Error e;
    const Batch *b = &w->batch;
    if (!w->ev->o->tokens && token_page_full(&w->page, b->targets)) return;
    ComparisonView *view = comparison_views(&w->ev->model.model, &w->space, b, w->temperature, &e);
    if (!view) {
        loss_abort(w);
        die("%s; lower --micro-tokens", e.text);
    }
    for (int32_t r = 0; r < b->targets; r++) {
        if (w->ev->o->report) reference_show_token(w, r, w->unit + unit[r], !r || unit[r] != unit[r - 1], &view[r]);
        if (!w->ev->o->tokens) continue;
        json_t *row = json_object(), *top = json_array();
        for (int k = 0; k < COMPARISON_TOP && view[r].top[k] >= 0; k++)
            json_array_append_new(top, json_pack("[i,f]", view[r].top[k], (double)view[r].p[k]));
        evaluator_count(row, "index", w->unit + unit[r]);
        evaluator_count(row, "position", b->positions[b->target_row[r]] + 1);
        evaluator_count(row, "id", b->target_token[r]);
        json_object_set_new(row, "text", inference_json_text(&w->ev->model, &b->target_token[r], 1, true));
        evaluator_number(row, "logp", w->logp[r]);
        evaluator_number(row, "reference_logp", w->other->apart.logp[r]);
        evaluator_number(row, "entropy", w->entropy[r]);
        evaluator_number(row, "kl", w->other->apart.reverse_kl[r]);
        evaluator_count(row, "rank", view[r].rank);
        json_object_set_new(row, "top", top);
        if (!json_line(&w->tokens, row, &e)) die("%s", e.text);
        json_decref(row);
    }
    free(view);
}

/* Adds the batch to the comparison with the reference. unit: (targets) the sequence of each. */
static inline void reference_compare(LossWork *w, const int32_t *unit) {
    Comparison *c = w->other;
    const Batch *b = &w->batch;
    for (int32_t first = 0, end; first < b->targets; first = end) {
        for (end = first; end < b->targets && unit[end] == unit[first];) end++;
        for (int32_t r = first; r < end; r++) {
            comparison_add(c, r, w->logp[r], w->entropy[r], w->argmax[r], (double)(r - first) / (end - first));
            if (w->sampled) comparison_sampled(c, r, w->logp[r]);
        }
    }
    if (w->ev->o->tokens || w->ev->o->report) reference_write_tokens(w, unit);
    w->unit += unit[b->targets - 1] + 1;
}

/* Writes the page of --report. */
static inline bool reference_write_page(LossWork *w, Error *e) {
    char *page = NULL, what[900];
    size_t n = 0;
    FILE *f = (FILE *)checked_object(open_memstream(&page, &n), "a stream in memory");
    snprintf(what, sizeof what, "%.280s beside %.280s on %.280s%s", w->ev->model.name, w->other->name,
             w->ev->inputs.path[0], w->sampled ? ", at the tokens that the first one drew" : "");
    token_page_write(f, what, &w->page);
    if (fclose(f)) die("out of memory: a page");
    const bool ok = writer_write(&w->page_file, page, n, e) && writer_commit(&w->page_file, e);
    free(page);
    token_page_free(&w->page);
    return ok;
}

/* Reports the comparison with the reference, and ends the files of --tokens and --report. */
static inline void reference_report(LossWork *w) {
    Error e;
    Comparison *c = w->other;
    const ComparisonSums *s = &c->all;
    const double n = s->targets;
    const struct {
        const char *key, *name;
        double value;
    } rows[] = {{"kl", "KL(model || reference)", s->kl / n},
                {"reference_kl", "KL(reference || model)", s->reverse / n},
                {"js", "Jensen-Shannon divergence", s->js / n},
                {"model_nll", "model's loss", s->nats / n},
                {"reference_nll", "reference's loss", s->reference_nats / n},
                {"model_entropy", "model's entropy", s->entropy / n},
                {"reference_entropy", "reference's entropy", s->reference_entropy / n},
                {"agreement", "same most likely token", s->agreement / n}};
    json_t *figures = json_object(), *deciles = json_array();
    fprintf(stderr, "compared with %s at %.0f tokens%s, exactly:\n", c->name, n,
            w->sampled ? " that the model drew" : "");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fprintf(stderr, "| %-26s | %10.6f |\n", rows[i].name, rows[i].value);
        evaluator_number(figures, rows[i].key, rows[i].value);
        token_page_figure(&w->page, rows[i].name, rows[i].value);
    }
    fputs("| KL by tenth of a sequence  |", stderr);
    for (int i = 0; i < COMPARISON_DECILES; i++) {
        const ComparisonSums *d = &c->decile[i];
        json_t *row = json_object();
        evaluator_count(row, "tokens", (int64_t)d->targets);
        evaluator_number(row, "kl", d->kl / d->targets);
        evaluator_number(row, "reference_kl", d->reverse / d->targets);
        json_array_append_new(deciles, row);
        if (d->targets > 0) fprintf(stderr, " %.4f", d->kl / d->targets);
        else fputs(" -", stderr);
    }
    fputs("\n", stderr);
    for (int i = 0; i < COMPARISON_ESTIMATORS && c->sampled; i++) {
        double error, deviation;
        char key[32];
        static const char *const names[COMPARISON_ESTIMATORS][2] = {
            {"k1, estimate of the first KL from the samples", "its standard deviation at a token"},
            {"k2", "its standard deviation at a token"},
            {"k3", "its standard deviation at a token"}};
        const double mean = comparison_estimate(c, i, &error, &deviation);
        token_page_figure(&w->page, names[i][0], mean);
        token_page_figure(&w->page, names[i][1], deviation);
        fprintf(stderr, "| k%d                         | %10.6f +- %.6f, standard deviation of a token %.4f\n", i + 1,
                mean, error, deviation);
        snprintf(key, sizeof key, "k%d", i + 1);
        evaluator_number(figures, key, mean);
        snprintf(key, sizeof key, "k%d_error", i + 1);
        evaluator_number(figures, key, error);
        snprintf(key, sizeof key, "k%d_deviation", i + 1);
        evaluator_number(figures, key, deviation);
    }
    json_object_set_new(figures, "model", json_string(c->name));
    evaluator_count(figures, "tokens", (int64_t)n);
    json_object_set_new(figures, "deciles", deciles);
    json_object_set_new(w->ev->result, "reference", figures);
    if (w->ev->o->tokens && !writer_commit(&w->tokens, &e)) die("%s", e.text);
    if (w->ev->o->report && !reference_write_page(w, &e)) die("%s", e.text);
}

#endif
