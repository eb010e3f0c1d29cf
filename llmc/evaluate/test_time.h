/* test_time.h - what more compute at test time changes: longer thoughts, search, and how much thoughts matter.
 *
 *     Thinking thinking[THINKING_BUDGETS];
 *     int budgets = thinking_open_all(&ev, thinking, &sampling, longest, &new_max);
 *     thinking_run(&t, &engine, thinking, &sampling, budgets, outcome, count, clock_seconds());
 *     search_tasks(&t, &sampling, count, new_max);
 *     ablation_report(&ev, t.ablation);
 */
#ifndef LLMC_EVALUATE_TEST_TIME_H
#define LLMC_EVALUATE_TEST_TIME_H

#include "../base/error.h"          /* Error, usage_error, error_set, xcalloc */
#include "../report/compute.h"      /* ComputePoint */
#include "../rollout/ablation.h"    /* ABLATION_NEEDED, Ablation */
#include "../rollout/beam_search.h" /* BeamKind, BeamSearch, SEARCH_BEAM, SEARCH_DVTS, ... */
#include "../rollout/beam_tasks.h"  /* BeamFigures, beam_evaluate */
#include "../rollout/evaluation.h"  /* Outcome */
#include "../rollout/rollout.h"     /* Sampling, Rollout */
#include "../rollout/thinking.h"    /* THINKING_BUDGETS, THINKING_INFINITE, ThinkingRun, Thinking, ... */
#include "completions.h"            /* completion_take, tasks_run */
#include "compute_curve.h"          /* Cost, curve_point, curve_flops, curve_parts */
#include "evaluator.h"              /* evaluator_number, EvaluateOptions, Evaluator, evaluator_count */
#include "figures.h"                /* figures_cell */
#include "tasks.h"                  /* tasks_fail, Tasks */

/* Reports the runs of --think-tokens, with s1's figures over them. */
static inline void thinking_report(Evaluator *ev, const ThinkingRun *run, int n) {
    json_t *runs = json_array();
    double control = 0, best = -INFINITY;
    fputs("  | thought, at most |   mean | accuracy |\n", stderr);
    for (int i = 0; i < n; i++) {
        const bool infinite = run[i].budget == THINKING_INFINITE;
        json_t *row = json_object();
        json_object_set_new(row, "think_tokens", infinite ? json_null() : json_integer(run[i].budget));
        evaluator_number(row, "tokens", run[i].tokens);
        evaluator_number(row, "accuracy", run[i].accuracy);
        json_array_append_new(runs, row);
        control += run[i].control;
        best = fmax(best, run[i].accuracy);
        if (infinite) fputs("  |         no limit |", stderr);
        else fprintf(stderr, "  | %16d |", run[i].budget);
        fprintf(stderr, " %6.1f | %6.2f %% |\n", run[i].tokens, 100 * run[i].accuracy);
    }
    const double scaling = thinking_scaling(run, n);
    fprintf(stderr, "  control %.1f %%, performance %.2f %%", 100 * control / n, 100 * best);
    if (isfinite(scaling)) fprintf(stderr, ", scaling %.4f points per token", 100 * scaling);
    fputc('\n', stderr);
    json_object_set_new(ev->result, "think_runs", runs);
    evaluator_number(ev->result, "control", control / n);
    evaluator_number(ev->result, "scaling", scaling);
    evaluator_number(ev->result, "performance", best);
}

/* Runs the tasks with each budget of --think-tokens. The figures of the last one are those of the program. */
static inline void thinking_run(Tasks *t, Rollout *engine, Thinking *thinking, Sampling *how, int n, Outcome *outcome,
                                int64_t count, double start) {
    EvaluateOptions *o = t->ev->o;
    ThinkingRun run[THINKING_BUDGETS];
    for (int i = 0; i < n; i++) {
        how->max_new = thinking[i].new_max;
        engine->turns = &thinking[i].turns;
        t->budget = thinking[i].forces ? thinking[i].budget : THINKING_INFINITE;
        t->thoughts = t->thought_tokens = t->within = 0;
        tasks_run(t, engine, how, outcome, count, start);
        if (o->compute) {
            const Cost *cost = o->samples ? &t->curve.sample : &t->curve.greedy;
            curve_parts(&t->curve, outcome, count, o->samples > 0);
            curve_point(&t->curve,
                        (ComputePoint){.method = "budget forcing",
                                       .parameter = t->budget == THINKING_INFINITE ? NAN : t->budget,
                                       .tokens = cost->tokens / cost->count,
                                       .flops = curve_flops(&t->curve, &t->ev->model.model.config, cost, 1, true),
                                       .accuracy = o->samples ? t->all.pass[0] : t->all.greedy},
                        o->samples ? t->all.pass_error[0] : t->all.greedy_error,
                        o->samples ? outcome->pass : &outcome->greedy, sizeof *outcome, count);
            t->curve.prompt = t->curve.greedy = t->curve.sample = (Cost){0};
        }
        run[i] = (ThinkingRun){t->budget, t->thought_tokens / t->thoughts, o->samples ? t->all.pass[0] : t->all.greedy,
                               t->within / t->thoughts};
    }
    thinking_report(t->ev, run, n);
}

/* Opens budget forcing for each budget. Returns their number; *new_max: maximum tokens of a completion. */
static inline int thinking_open_all(Evaluator *ev, Thinking thinking[THINKING_BUDGETS], const Sampling *how,
                                    int32_t longest, int *new_max) {
    EvaluateOptions *o = ev->o;
    Error e;
    int32_t budget[THINKING_BUDGETS];
    const int n = thinking_on(&o->think) ? thinking_budgets(&o->think, budget, &e) : 0;
    if (!n && thinking_on(&o->think)) usage_error("%s", e.text);
    for (int i = 0; i < n; i++) {
        if (!thinking_open(&thinking[i], &o->think, budget[i], &ev->model.text, how, ev->model.model.config.context,
                           longest, &e))
            usage_error("%s", e.text);
        if (!i || thinking[i].new_max > *new_max) *new_max = thinking[i].new_max;
    }
    return n;
}

/* Reports --think-ablation. */
static inline void ablation_report(Evaluator *ev, const Ablation *x) {
    const double n = x->completions, steps = x->steps;
    json_t *figures = json_object();
    if (!x->completions) fputs("  no completion has an end of thinking and an answer after it\n", stderr);
    else
        fprintf(stderr,
                "  %.0f completions with a thought and an answer, %.1f steps in each (%.0f without)\n"
                "  the thoughts raise the log-probability of the answers by %.3f, to %.3f\n"
                "  without a step it falls by %.3f, with a step of another completion by %.3f\n"
                "  %.1f %% of the steps are needed: without them more than %.0f %% of the gain is lost\n",
                n, steps / n, x->without, x->all / n, x->full / n, x->removed / steps, x->swapped / x->swaps,
                100 * x->needed / x->weighed, 100 * ABLATION_NEEDED);
    evaluator_number(figures, "completions", n);
    evaluator_number(figures, "without", x->without);
    evaluator_number(figures, "steps", steps / n);
    evaluator_number(figures, "logp", x->full / n);
    evaluator_number(figures, "gain", x->all / n);
    evaluator_number(figures, "removed", x->removed / steps);
    evaluator_number(figures, "swapped", x->swapped / x->swaps);
    evaluator_number(figures, "needed", x->needed / x->weighed);
    json_object_set_new(ev->result, "think_ablation", figures);
}

static inline json_t *search_json(const BeamFigures *f) {
    json_t *figures = json_object();
    evaluator_count(figures, "n", f->n);
    evaluator_number(figures, "accuracy", f->accuracy);
    evaluator_number(figures, "accuracy_error", f->accuracy_error);
    evaluator_number(figures, "majority", f->majority);
    evaluator_number(figures, "weighted", f->weighted);
    evaluator_number(figures, "pass", f->pass);
    evaluator_number(figures, "results", f->results);
    evaluator_number(figures, "finished", f->finished);
    evaluator_number(figures, "tokens", f->tokens);
    evaluator_number(figures, "prm_tokens", f->prm_tokens);
    evaluator_number(figures, "flops", f->flops);
    return figures;
}

/* Runs the methods of --search on the prompts. */
static inline void search_tasks(Tasks *t, const Sampling *how, int64_t count, int new_max) {
    EvaluateOptions *o = t->ev->o;
    Error e;
    BeamSearch x;
    BeamKind kind[SEARCH_KINDS];
    const int methods = beam_methods(&o->search, kind, &e), n = (int)o->samples;
    const int64_t most = o->s.slots / n < count ? o->s.slots / n : count;
    json_t *all = json_object();
    double *right = (double *)xcalloc((size_t)count + 1, sizeof *right);
    if (!beam_new(&x, &o->search, &t->ev->model.model, &t->ev->model.text, &t->judge, most > 1 ? (int)most : 1, n,
                  t->prompts.longest, new_max, &e)) {
        Error why;
        error_set(&why, "%s; lower --slots", e.text);
        tasks_fail(t, why.text);
    }
    fprintf(stderr, "  search with %d solutions of a prompt\n", n);
    fputs("  | method    |      accuracy | majority | weighted |   any | results |  tokens | of the reward model |\n",
          stderr);
    for (int i = 0; i < methods; i++) {
        BeamFigures f;
        const int least = kind[i] == SEARCH_BEAM || kind[i] == SEARCH_DVTS ? (int)o->search.width : 1;
        t->search = beam_name(kind[i]);
        for (int k = o->compute ? least : n;; k = 2 * k < n ? 2 * k : n) {
            if (!beam_evaluate(&x, kind[i], k, how, &t->prompts, count, &t->ev->model.text, t->all.code,
                               o->completions && k == n ? completion_take : NULL, t, right, &f, &e))
                tasks_fail(t, e.text);
            if (t->failed) tasks_fail(t, t->error.text);
            if (o->compute)
                curve_point(&t->curve,
                            (ComputePoint){.method = t->search,
                                           .parameter = k,
                                           .tokens = f.tokens,
                                           .prm_tokens = f.prm_tokens,
                                           .flops = f.flops,
                                           .accuracy = f.accuracy},
                            f.accuracy_error, right, sizeof *right, count);
            if (k == n) break;
        }
        fprintf(stderr, "  | %-9s |", t->search);
        figures_cell(f.accuracy, f.accuracy_error);
        fprintf(stderr, " %8.1f | %8.1f | %5.1f | %7.1f | %7.1f | %19.1f |\n", 100 * f.majority, 100 * f.weighted,
                100 * f.pass, f.results, f.tokens, f.prm_tokens);
        json_object_set_new(all, t->search, search_json(&f));
    }
    t->search = NULL;
    json_object_set_new(t->ev->result, "search", all);
    beam_free(&x);
    free(right);
}

#endif
