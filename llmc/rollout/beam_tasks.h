/* beam_tasks.h - accuracy of search under a process reward model (beam_search.h) on verifiable tasks.
 *
 *   accuracy   the result with the highest score is right
 *   majority   the most frequent final answer of the results is right; ties are averaged
 *   weighted   the final answer with the largest sum of scores is right
 *   pass       any result is right
 *
 * A solution that was cut off before its end is a result, but it is neither chosen nor does it vote, unless no result has
 * ended. Each result has one vote: a result is counted as often as the search drew it.
 *
 *     BeamSearch x;                                                                       // of beam_new()
 *     BeamFigures f;
 *     double *right = (double *)xcalloc((size_t)prompts.count, sizeof *right);
 *     if (!beam_evaluate(&x, SEARCH_DVTS, 16, &sampling, &prompts, prompts.count, &model_text, NULL, NULL, NULL, right, &f,
 *                        &e))
 *         die("%s", e.text);
 */
#ifndef LLMC_ROLLOUT_BEAM_TASKS_H
#define LLMC_ROLLOUT_BEAM_TASKS_H

#include "../base/error.h"           /* xcalloc, Error, error_set */
#include "../base/program.h"         /* program_stopping */
#include "../model/model_text.h"     /* ModelText */
#include "../reward/code_reward.h"   /* CodeScorer */
#include "../reward/verify_answer.h" /* RewardInput */
#include "beam_search.h"             /* BeamTree, BeamKind, BeamResult, BeamSearch, ... */
#include "evaluation.h"              /* EvaluationWatch, EvaluationSample, evaluation_answer, ... */
#include "prompts.h"                 /* Prompts, prompts_input, prompts_length, prompts_said, ... */
#include "rollout.h"                 /* Sampling, Completion */
#include "votes.h"                   /* weighted_right */

/* Means over prompts; accuracies over those that can be verified, with the standard error of the first one. */
typedef struct BeamFigures {
    BeamKind kind;
    int n;
    double prompts, accuracy, accuracy_error, majority, weighted, pass;
    double results, finished;         /* of a prompt; the share that ended */
    double tokens, prm_tokens, flops; /* of a prompt: drawn tokens, tokens of the process model, FLOPs of both */
} BeamFigures;

/* Whether the best of the results is right, and the other figures of one prompt, which are added to f. NaN if the prompt cannot
 * be verified. said, answers, weight: (results) with only those that count; right: of them. */
static inline double beam_tally(BeamFigures *f, char *const *answers, const double *right, const double *weight,
                                int n) {
    int best = 0;
    double any = 0;
    if (!n || isnan(right[0])) return NAN;
    for (int i = 0; i < n; i++) {
        if (weight[i] > weight[best]) best = i;
        any = fmax(any, right[i]);
    }
    f->prompts++;
    f->accuracy += right[best];
    f->pass += any;
    f->majority += weighted_right(answers, right, NULL, n);
    f->weighted += weighted_right(answers, right, weight, n);
    return right[best];
}

/* Judges the results of prompt i. */
static inline bool beam_judge_prompt(const BeamTree *t, const Prompts *p, int64_t i, const Sampling *how,
                                     const ModelText *text, CodeScorer *code, EvaluationWatch watch, void *context,
                                     BeamFigures *f, double *chosen, Error *e) {
    const size_t n = (size_t)t->results + 1;
    RewardInput *in = (RewardInput *)xcalloc(n, sizeof *in);
    char **said = (char **)xcalloc(n, sizeof(char *)), **answers = (char **)xcalloc(n, sizeof(char *));
    double *right = (double *)xcalloc(n, sizeof *right), *weight = (double *)xcalloc(n, sizeof *weight),
           *counted = (double *)xcalloc(n, sizeof *counted);
    int finished = 0, voters = 0;
    for (int k = 0; k < t->results; k++) {
        const Completion *c = &t->result[k].completion;
        size_t length;
        said[k] = prompts_said(how, text, c, &length);
        in[k] = prompts_input(p, i, said[k], length, c, (uint64_t)k, how->max_new);
        finished += c->finished;
    }
    const bool ok = evaluation_check_all(in, t->results, code, right, e);
    for (int k = 0; ok && k < t->results; k++) {
        const BeamResult *r = &t->result[k];
        const EvaluationSample s = {.prompt = i,
                                    .sample = k,
                                    .text = said[k],
                                    .right = right[k],
                                    .reward = r->score,
                                    .completion = &r->completion};
        if (watch) watch(context, &s);
        if (finished && !r->completion.finished) continue;
        answers[voters] = evaluation_answer(&in[k]);
        weight[voters] = r->score;
        counted[voters++] = right[k];
    }
    if (ok) *chosen = beam_tally(f, answers, counted, weight, voters);
    f->results += t->results;
    f->finished += finished;
    f->tokens += (double)t->drawn;
    for (int k = 0; k < t->results; k++) free(said[k]), free(answers[k]);
    free(in), free(said), free(answers), free(right), free(weight), free(counted);
    return ok;
}

static inline void beam_means(BeamFigures *f, int64_t count) {
    const double N = (double)count, n = f->prompts;
    f->finished /= f->results;
    f->results /= N;
    f->tokens /= N;
    f->prm_tokens /= N;
    f->flops /= N;
    f->accuracy /= n;
    f->pass /= n;
    f->majority /= n;
    f->weighted /= n;
    f->accuracy_error = n > 1 ? sqrt(f->accuracy * (1 - f->accuracy) / (n - 1)) : NAN;
}

/* Searches for completions of the first `count` prompts, with n solutions each. right: (count) whether the chosen result is
 * right, 1 or 0; NaN: the prompt cannot be verified. watch: called for each result; may be NULL. */
static inline bool beam_evaluate(BeamSearch *x, BeamKind kind, int n, const Sampling *how, const Prompts *p,
                                 int64_t count, const ModelText *text, CodeScorer *code, EvaluationWatch watch,
                                 void *context, double *right, BeamFigures *f, Error *e) {
    BeamTree *t = (BeamTree *)xcalloc((size_t)x->trees, sizeof *t);
    const double flops = x->policy.flops + x->judge.flops;
    const int64_t rows = x->judge.rows;
    bool ok = true;
    *f = (BeamFigures){.kind = kind, .n = n};
    for (int64_t i = 0; ok && i < count; i += x->trees) {
        const int trees = count - i < x->trees ? (int)(count - i) : x->trees;
        for (int k = 0; k < trees; k++)
            t[k] = (BeamTree){
                .prompt = prompts_tokens(p, i + k), .prompt_len = prompts_length(p, i + k), .id = (uint64_t)(i + k)};
        ok = !program_stopping() || error_set(e, "stopped by a signal");
        ok = ok && beam_run(x, kind, n, how, t, trees, e);
        for (int k = 0; k < trees; k++) {
            ok = ok && beam_judge_prompt(&t[k], p, i + k, how, text, code, watch, context, f, &right[i + k], e);
            beam_tree_free(&t[k]);
        }
    }
    free(t);
    f->prm_tokens = (double)(x->judge.rows - rows);
    f->flops = x->policy.flops + x->judge.flops - flops;
    if (ok) beam_means(f, count);
    return ok;
}

#endif
