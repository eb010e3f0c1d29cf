/* judged_pairs.h - a language model as a judge of preference pairs: its accuracy and biases, and its labels.
 *
 *     evaluate_judge(&ev, &shard);
 */
#ifndef LLMC_EVALUATE_JUDGED_PAIRS_H
#define LLMC_EVALUATE_JUDGED_PAIRS_H

#include "../base/clock.h"          /* clock_seconds */
#include "../base/error.h"          /* die, Error, error_set, warn */
#include "../base/io.h"             /* Writer, writer_abort, writer_commit, writer_open */
#include "../base/json_text.h"      /* json_utf8 */
#include "../base/program.h"        /* program_stopping */
#include "../judge/judge.h"         /* Judge, judge_close, judge_open, judge_use */
#include "../judge/judge_options.h" /* JUDGE_BY_PAIR */
#include "../judge/pairs.h"         /* JudgeEvaluation, JudgedPair, PairTexts, judge_evaluate, ... */
#include "../records/shard.h"       /* Shard */
#include "../rollout/evaluation.h"  /* wilson_interval */
#include "../rollout/inference.h"   /* inference_device, json_line */
#include "evaluator.h"              /* evaluator_number, Evaluator, evaluator_count, EvaluateOptions, ... */
#include "figures.h"                /* figures_judge */
#include "reward_figures.h"         /* reward_figures_calibration */

/* Writes a labelled pair to the file of --completions. */
static inline bool judged_pairs_write(void *writer, const JudgedPair *x, Error *e) {
    json_t *row = json_object();
    json_object_set_new(row, "prompt", json_utf8(x->prompt, strlen(x->prompt)));
    json_object_set_new(row, "chosen", json_utf8(x->chosen, strlen(x->chosen)));
    json_object_set_new(row, "rejected", json_utf8(x->rejected, strlen(x->rejected)));
    evaluator_number(row, "p", x->p);
    evaluator_number(row, "p_first", x->first);
    evaluator_number(row, "p_second", x->second);
    const bool ok = json_line((Writer *)writer, row, e);
    json_decref(row);
    return ok && (!program_stopping() || error_set(e, "stopped by a signal"));
}

static inline void judged_pairs_report(Evaluator *ev, const JudgeEvaluation *v, const Judge *j, double seconds) {
    const double bias = judge_length_bias(v);
    double low = NAN, high = NAN;
    if (v->pairs > 0) wilson_interval(v->right / v->pairs, v->pairs, &low, &high);
    fprintf(stderr, "judge on %.0f pairs", v->pairs);
    if (v->unanswered > 0) fprintf(stderr, ", and %.0f without an answer", v->unanswered);
    fputc('\n', stderr);
    if (v->pairs > 0)
        fprintf(
            stderr,
            "  accuracy %.2f %%, 95 %% interval %.2f to %.2f; one order only %.2f %%; mean probability of the label %.4f\n",
            100 * v->right / v->pairs, 100 * low, 100 * high, 100 * v->single / v->pairs, v->agreement / v->pairs);
    if (isfinite(bias)) fprintf(stderr, "  length bias %.4f\n", bias);
    reward_figures_calibration(ev, &v->calibration);
    figures_judge(ev, j);
    fprintf(stderr, "%.2f s, %.0f pairs/s\n", seconds, v->pairs / seconds);
    evaluator_number(ev->result, "accuracy", v->right / v->pairs);
    evaluator_number(ev->result, "accuracy_low", low);
    evaluator_number(ev->result, "accuracy_high", high);
    evaluator_number(ev->result, "single_order_accuracy", v->single / v->pairs);
    evaluator_number(ev->result, "agreement", v->agreement / v->pairs);
    evaluator_number(ev->result, "length_bias", bias);
    evaluator_count(ev->result, "pairs", (int64_t)v->pairs);
    evaluator_count(ev->result, "unanswered", (int64_t)v->unanswered);
}

/* Labels the pairs of a preference shard by the judge. */
static inline void evaluate_judge(Evaluator *ev, const Shard *s) {
    EvaluateOptions *o = ev->o;
    Error e;
    Judge j;
    PairTexts texts;
    Writer out;
    JudgeEvaluation v = judge_evaluation();
    const int64_t count = evaluator_first(ev, s->count);
    if (!s->count) die("%s: the shard is empty", s->name);
    inference_device(&ev->model, &o->m);
    if (!judge_open(&j, &o->judge, ev->model.backend, ev->model.device, (uint64_t)o->s.seed, &e) ||
        !judge_use(&j, JUDGE_BY_PAIR, &e) || !pair_texts_open(&texts, s, &e) ||
        (o->completions && !writer_open(&out, o->completions, &e)))
        die("%s", e.text);
    json_object_set_new(ev->result, "model", json_string(o->judge.file ? j.local.name : o->judge.model));
    if (o->judge.file) evaluator_lineage(ev, j.local.file.lineage);
    const double start = clock_seconds();
    const bool ok = judge_evaluate(&v, &j, &texts, s, count, o->completions ? judged_pairs_write : NULL,
                                   o->completions ? &out : NULL, &e);
    if (!ok && o->completions) writer_abort(&out);
    if (!ok || (o->completions && !writer_commit(&out, &e))) die("%s", e.text);
    if (texts.unwrapped)
        warn("%s: %lld of %lld prompts are no single message of a user; they are read with their special tokens",
             s->name, (long long)texts.unwrapped, (long long)count);
    shard_warn_golds(s, v.golds);
    judged_pairs_report(ev, &v, &j, clock_seconds() - start);
    pair_texts_close(&texts);
    judge_close(&j);
    ev->model.backend->close(ev->model.device);
}

#endif
