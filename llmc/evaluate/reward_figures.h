/* reward_figures.h - a reward model's accuracy, margin and calibration.
 *
 *     evaluate_reward_model(&ev, &shard);       // a preference, unpaired or step shard
 */
#ifndef LLMC_EVALUATE_REWARD_FIGURES_H
#define LLMC_EVALUATE_REWARD_FIGURES_H

#include "../base/clock.h"               /* clock_seconds */
#include "../base/error.h"               /* die, Error, warn, usage_error */
#include "../base/options.h"             /* option_given */
#include "../base/program.h"             /* program_stopping */
#include "../model/model_fits.h"         /* FitSide */
#include "../records/shard.h"            /* Shard, RECORD_PREFERENCE, RECORD_STEP */
#include "../records/shard_fits.h"       /* fit_shard */
#include "../reward/calibration.h"       /* calibration_edge, Calibration, CALIBRATION_BINS, CalibrationBin, ... */
#include "../reward/evaluation_reward.h" /* RewardEvaluation, evaluate_rewards */
#include "../reward/reward_model.h"      /* RewardModel, PRM_MIN, PrmAggregation, REWARD_MODEL_PRM, ... */
#include "../rollout/evaluation.h"       /* wilson_interval */
#include "../rollout/inference.h"        /* inference_device */
#include "evaluator.h"                   /* evaluator_number, Evaluator, evaluator_count, EvaluateOptions, ... */

/* Opens the reward model of --reward-model on the open device. */
static inline void reward_figures_open(Evaluator *ev, RewardModel *r) {
    EvaluateOptions *o = ev->o;
    Error e;
    if (!reward_model_open(r, o->reward_model, ev->model.backend, ev->model.device, (int)o->micro_tokens, &e))
        die("%s", e.text);
    r->aggregation = (PrmAggregation)o->aggregation;
    if (option_given(&o->aggregation) && o->aggregation != PRM_MIN && r->note.kind != REWARD_MODEL_PRM)
        usage_error("--prm-aggregation: %s is not a process reward model", r->name);
}

/* Ends the program unless the reward model can be run on tokens of `other`; see model_fits(). */
static inline void reward_figures_check(const RewardModel *r, const FitSide *other, int32_t longest) {
    Error e, note = {0};
    if (!reward_model_fits(r, other, longest, &note, &e)) die("%s", e.text);
    if (note.text[0]) warn("%s", note.text);
}

static inline void reward_figures_calibration_table(const Calibration *c) {
    fputs("  |   probability |   count | mean |  true |\n", stderr);
    for (int i = 0; i < CALIBRATION_BINS; i++) {
        const CalibrationBin *b = &c->sum.bin[i];
        fprintf(stderr, "  | %.2f to %.2f  | %7.0f |", calibration_edge(c, i), calibration_edge(c, i + 1), b->count);
        if (b->count > 0) fprintf(stderr, " %.2f |  %.2f |\n", b->predicted / b->count, b->right / b->count);
        else fputs("    - |     - |\n", stderr);
    }
}

static inline json_t *reward_figures_calibration_json(const Calibration *c) {
    json_t *table = json_array();
    for (int i = 0; i < CALIBRATION_BINS; i++) {
        json_t *row = json_object();
        evaluator_number(row, "low", calibration_edge(c, i));
        evaluator_number(row, "high", calibration_edge(c, i + 1));
        evaluator_number(row, "count", c->sum.bin[i].count);
        evaluator_number(row, "predicted", c->sum.bin[i].predicted / c->sum.bin[i].count);
        evaluator_number(row, "true", c->sum.bin[i].right / c->sum.bin[i].count);
        json_array_append_new(table, row);
    }
    return table;
}

/* Reports the log loss, the expected calibration error and the table of a calibration; without predictions they are null and
 * nothing is printed. */
static inline void reward_figures_calibration(Evaluator *ev, const Calibration *c) {
    const double log_loss = c->sum.log_loss / c->sum.count, ece = calibration_error(c);
    const bool any = c->sum.count > 0;
    if (any) {
        fprintf(stderr, "  log loss %.4f, expected calibration error %.2f %%\n", log_loss, 100 * ece);
        reward_figures_calibration_table(c);
    }
    evaluator_number(ev->result, "log_loss", log_loss);
    evaluator_number(ev->result, "ece", ece);
    json_object_set_new(ev->result, "calibration", any ? reward_figures_calibration_json(c) : json_null());
}

static inline bool reward_figures_watch(void *start, int64_t done, int64_t all) {
    evaluator_progress(done, all, "records", *(const double *)start);
    return !program_stopping();
}

static inline void reward_figures_report(Evaluator *ev, const RewardEvaluation *v, const RewardModel *r, const Shard *s,
                                         double seconds) {
    static const char *const kinds[] = {"Bradley-Terry", "outcome", "process"};
    const char *units = s->kind == RECORD_PREFERENCE ? "pairs" : s->kind == RECORD_STEP ? "steps" : "answers";
    double low = NAN, high = NAN;
    if (isfinite(v->accuracy)) wilson_interval(v->accuracy, v->units, &low, &high);
    fprintf(stderr, "%s reward model on %lld records, %.0f %s\n", kinds[r->note.kind], (long long)v->records, v->units,
            units);
    if (isfinite(v->accuracy))
        fprintf(stderr, "  accuracy %.2f %%, 95 %% interval %.2f to %.2f\n", 100 * v->accuracy, 100 * low, 100 * high);
    if (isfinite(v->auc)) fprintf(stderr, "  good scores above bad in %.2f %% (AUC)\n", 100 * v->auc);
    if (isfinite(v->solutions)) fprintf(stderr, "  solutions classified correctly %.2f %%\n", 100 * v->solutions);
    if (isfinite(v->margin)) fprintf(stderr, "  margin %.4f\n", v->margin);
    fprintf(stderr, "  score from %.4f to %.4f, mean %.4f, standard deviation %.4f\n", v->least, v->most, v->mean,
            v->deviation);
    reward_figures_calibration(ev, &v->calibration);
    fprintf(stderr, "%.2f s, %.0f records/s\n", seconds, (double)v->records / seconds);
    evaluator_number(ev->result, "accuracy", v->accuracy);
    evaluator_number(ev->result, "accuracy_low", low);
    evaluator_number(ev->result, "accuracy_high", high);
    evaluator_number(ev->result, "auc", v->auc);
    evaluator_number(ev->result, "solution_accuracy", v->solutions);
    evaluator_number(ev->result, "margin", v->margin);
    evaluator_number(ev->result, "min_reward", v->least);
    evaluator_number(ev->result, "max_reward", v->most);
    evaluator_number(ev->result, "mean_reward", v->mean);
    evaluator_number(ev->result, "reward_deviation", v->deviation);
    evaluator_count(ev->result, "records", v->records);
    evaluator_count(ev->result, "dropped", v->dropped);
    evaluator_count(ev->result, units, (int64_t)v->units);
}

/* Scores the records of a shard and reports the figures. */
static inline void reward_figures_score(Evaluator *ev, RewardModel *r, const Shard *s) {
    Error e;
    RewardEvaluation v;
    const int64_t count = evaluator_first(ev, s->count);
    if (!s->count) die("%s: the shard is empty", s->name);
    double start = clock_seconds();
    if (!evaluate_rewards(&v, r, s, count, reward_figures_watch, &start, &e)) die("%s", e.text);
    if (program_stopping()) die("stopped by a signal before the end of %s", s->name);
    if (v.dropped)
        warn("%s: %lld of %lld records have no completion or no label, or exceed the context of %d; they were left out",
             s->name, (long long)v.dropped, (long long)count, r->model.config.context);
    shard_warn_golds(s, v.golds);
    reward_figures_report(ev, &v, r, s, clock_seconds() - start);
}

/* Evaluates a reward model on a preference, unpaired or step shard. */
static inline void evaluate_reward_model(Evaluator *ev, const Shard *s) {
    RewardModel r;
    inference_device(&ev->model, &ev->o->m);
    reward_figures_open(ev, &r);
    const FitSide data = fit_shard(s);
    reward_figures_check(&r, &data, 0);
    json_object_set_new(ev->result, "model", json_string(r.name));
    evaluator_lineage(ev, r.file.lineage);
    json_t *together = ev->result, *files = json_array();
    for (int k = 0; k < s->parts; k++) {
        evaluator_begin_file(ev, ev->inputs.path[k]);
        reward_figures_score(ev, &r, &s->part[k]);
        evaluator_end_file(ev, files);
    }
    if (s->parts) evaluator_begin_all(ev, together, files);
    else json_decref(files);
    reward_figures_score(ev, &r, s);
    reward_model_close(&r);
    ev->model.backend->close(ev->model.device);
}

#endif
