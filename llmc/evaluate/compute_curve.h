/* compute_curve.h - the points of --compute-curve: accuracy by tokens and FLOPs.
 *
 *     ComputeCurve curve = {0};
 *     EvaluationSample sample = {.completion = &c};
 *     curve_count(&curve, &sample, prompt_len);                   // the cost of each completion
 *     Outcome outcome[100];                                       // of each prompt, with their figures in v
 *     curve_samples(&curve, &v, true, &config, outcome, 100);     // the points of samples without search
 *     if (!curve_write(&curve, "sft.bin on tasks.shard", &e)) die("%s", e.text);
 */
#ifndef LLMC_EVALUATE_COMPUTE_CURVE_H
#define LLMC_EVALUATE_COMPUTE_CURVE_H

#include "../base/error.h"         /* xrealloc, Error, checked_object, die, ... */
#include "../base/io.h"            /* writer_commit, Writer, writer_write */
#include "../model/config.h"       /* ModelConfig */
#include "../model/transformer.h"  /* model_flops */
#include "../report/compute.h"     /* ComputePoint, COMPUTE_PARTS, compute_json, compute_page */
#include "../rollout/evaluation.h" /* Outcome, Evaluation, EvaluationSample, evaluation_weighted */
#include "../rollout/inference.h"  /* json_line */
#include "../rollout/rollout.h"    /* completion_drawn */
#include "../rollout/votes.h"      /* VOTES_REWARD */

/* What a model computes, summed over `count` prompts or completions. The model that draws a completion reads all of its tokens
 * but the last, and computes the logits of those that it draws, the first of them from a row of the prompt. A judge reads all
 * tokens. */
typedef struct Cost {
    double count, tokens, drawn;
    double rows, pairs;             /* that the model reads, and its pairs of a query with a key */
    double judge_rows, judge_pairs; /* that a judge reads */
} Cost;

/* Adds `rows` rows that follow `before` others. */
static inline void cost_rows(double *rows, double *pairs, double before, double more) {
    *rows += more;
    *pairs += more * before + 0.5 * more * (more + 1);
}

/* prompt, greedy, sample: costs by which the FLOPs of methods without search are computed. */
typedef struct ComputeCurve {
    ComputePoint *point;
    int points;
    int *part; /* (prompts) the fifth of the prompts by difficulty; -1: cannot be verified */
    Cost prompt, greedy, sample;
    Writer rows, page; /* --compute-curve, --report */
} ComputeCurve;

/* Adds what a completion cost after its prompt of n tokens. */
static inline void curve_count(ComputeCurve *curve, const EvaluationSample *s, int32_t n) {
    Cost *c = s->sample < 0 ? &curve->greedy : &curve->sample, *p = &curve->prompt;
    const int32_t tokens = s->completion->count;
    c->count++;
    c->tokens += tokens;
    c->drawn += completion_drawn(s->completion);
    cost_rows(&c->rows, &c->pairs, n, tokens ? tokens - 1 : 0);
    cost_rows(&c->judge_rows, &c->judge_pairs, n, tokens);
    if (s->sample >= 0) return;
    p->count++;
    cost_rows(&p->rows, &p->pairs, 0, n);
}

/* FLOPs for a prompt and k completions. draws: of the model that draws them; otherwise of a judge. */
static inline double curve_flops(const ComputeCurve *curve, const ModelConfig *c, const Cost *x, double k, bool draws) {
    const Cost *p = &curve->prompt;
    const double each = x->count ? k / x->count : 0, rows = each * (draws ? x->rows : x->judge_rows),
                 pairs = each * (draws ? x->pairs : x->judge_pairs);
    return model_flops(c, p->rows / p->count + rows, draws ? each * x->drawn : 0, p->pairs / p->count + pairs, 1);
}

/* Adds a point. by_prompt: whether each prompt was right, at `stride` bytes; NULL: unknown. */
static inline void curve_point(ComputeCurve *curve, ComputePoint point, double error, const void *by_prompt,
                               size_t stride, int64_t count) {
    double right[COMPUTE_PARTS] = {0}, prompts[COMPUTE_PARTS] = {0};
    point.low = fmax(point.accuracy - 1.959963984540054 * error, 0);
    point.high = fmin(point.accuracy + 1.959963984540054 * error, 1);
    for (int64_t i = 0; i < count && by_prompt; i++) {
        const double x = *(const double *)((const char *)by_prompt + (size_t)i * stride);
        if (curve->part[i] < 0 || isnan(x)) continue;
        right[curve->part[i]] += x;
        prompts[curve->part[i]]++;
    }
    for (int k = 0; k < COMPUTE_PARTS; k++) point.part[k] = prompts[k] ? right[k] / prompts[k] : NAN;
    curve->point = (ComputePoint *)xrealloc(curve->point, (size_t)curve->points + 1, sizeof *curve->point);
    curve->point[curve->points++] = point;
}

static inline int curve_by_pass(const void *a, const void *b, void *outcomes) {
    const Outcome *x = (const Outcome *)outcomes;
    const int i = *(const int *)a, j = *(const int *)b;
    const double p = x[i].pass[0], q = x[j].pass[0];
    return p > q ? -1 : p < q ? 1 : (i > j) - (i < j);
}

/* Divides the prompts into fifths by how often a sample is right. */
static inline void curve_parts(ComputeCurve *curve, const Outcome *outcome, int64_t count, bool drawn) {
    int *order = (int *)xcalloc((size_t)count + 1, sizeof *order), n = 0;
    curve->part = (int *)xrealloc(curve->part, (size_t)count + 1, sizeof *curve->part);
    for (int64_t i = 0; i < count; i++) {
        curve->part[i] = -1;
        if (outcome[i].scorable && drawn && !isnan(outcome[i].pass[0])) order[n++] = (int)i;
    }
    qsort_r(order, (size_t)n, sizeof *order, curve_by_pass, (void *)outcome);
    for (int i = 0; i < n; i++) curve->part[order[i]] = (int)((int64_t)i * COMPUTE_PARTS / n);
    free(order);
}

/* Adds the points of samples without search: greedy, and pass, majority, best and weighted for each k. */
static inline void curve_samples(ComputeCurve *curve, const Evaluation *v, bool rewarded, const ModelConfig *c,
                                 const Outcome *outcome, int64_t count) {
    curve_parts(curve, outcome, count, v->samples > 0);
    curve_point(curve,
                (ComputePoint){.method = "greedy",
                               .parameter = NAN,
                               .tokens = curve->greedy.tokens / curve->greedy.count,
                               .flops = curve_flops(curve, c, &curve->greedy, 1, true),
                               .accuracy = v->greedy},
                v->greedy_error, &outcome->greedy, sizeof *outcome, count);
    const struct {
        const char *method;
        const double *value, *error;
        size_t at;
        bool judged, shown;
    } all[] = {
        {"pass", v->pass, v->pass_error, offsetof(Outcome, pass), false, true},
        {"majority", v->majority, v->majority_error, offsetof(Outcome, majority), false, true},
        {"best", v->best, v->best_error, offsetof(Outcome, best), v->judge, rewarded},
        {"weighted", v->weighted, v->weighted_error, offsetof(Outcome, weighted), v->judge && v->vote == VOTES_REWARD,
         evaluation_weighted(v)},
    };
    for (size_t m = 0; m < sizeof all / sizeof *all; m++)
        for (int k = 0; k < v->ks && all[m].shown; k++) {
            const double n = v->k[k], tokens = n * curve->sample.tokens / curve->sample.count;
            const bool judged = all[m].judged;
            ComputePoint point = {.method = all[m].method,
                                  .parameter = n,
                                  .tokens = tokens,
                                  .prm_tokens = judged ? tokens + curve->prompt.rows / curve->prompt.count : 0,
                                  .flops = curve_flops(curve, c, &curve->sample, n, true),
                                  .accuracy = all[m].value[k]};
            if (judged) point.flops += curve_flops(curve, &v->judge->model.config, &curve->sample, n, false);
            curve_point(curve, point, all[m].error[k], (const char *)outcome + all[m].at + (size_t)k * sizeof(double),
                        sizeof *outcome, count);
        }
}

/* Writes the rows and the page. */
static inline bool curve_write(ComputeCurve *curve, const char *what, Error *e) {
    bool ok = true;
    for (int i = 0; ok && i < curve->points; i++) {
        json_t *row = compute_json(&curve->point[i]);
        ok = json_line(&curve->rows, row, e);
        json_decref(row);
    }
    ok = ok && writer_commit(&curve->rows, e);
    if (ok && what) {
        char *page = NULL;
        size_t n = 0;
        FILE *f = (FILE *)checked_object(open_memstream(&page, &n), "a stream in memory");
        compute_page(f, what, curve->point, curve->points);
        if (fclose(f)) die("out of memory: a page");
        ok = writer_write(&curve->page, page, n, e) && writer_commit(&curve->page, e);
        free(page);
    }
    free(curve->point), free(curve->part);
    return ok;
}

#endif
