/* evaluation.h - how good a model is at tasks that can be checked: greedy accuracy, pass@k, majority@k, best-of-n.
 *
 * Of each prompt n samples are drawn; the task's own check says which are right.
 *
 *   pass@k     the chance that one of k samples is right: 1 - C(n-c, k) / C(n, k) with c right of n, the unbiased
 *              estimator of Chen et al. 2021, eq. 1
 *   maj@k      is the most frequent final answer of the first k samples right (self-consistency: Wang et al. 2022)?
 *   best@n     is the sample that the rewards value most right (the mean over ties)?
 *
 *     Evaluation v = {.samples = 8};
 *     evaluate_tasks(&v, &engine, &sampling, &prompts, 0, prompts.count, &text, &rewards, &e);
 */
#ifndef LLMC_EVALUATION_H
#define LLMC_EVALUATION_H

#include "prompts.h"

enum { EVALUATION_KS = 16 };

typedef struct Evaluation {
    int samples; /* n; 0: greedy only */
    /* results, means over the prompts */
    int64_t prompts, unscorable; /* prompts whose task has no check are left out of every mean */
    double greedy, greedy_error; /* accuracy, and its standard error */
    double tokens, finished;     /* greedy completions: mean length, share that ended by themselves */
    int ks, k[EVALUATION_KS];    /* 1, 2, 4, ... n */
    double pass[EVALUATION_KS], majority[EVALUATION_KS];
    double best;                 /* NaN without rewards */
} Evaluation;

/* 1 - C(n-c, k) / C(n, k), as a product that neither overflows nor cancels. */
static inline double pass_at_k(int n, int c, int k) {
    if (n - c < k) return 1;
    double miss = 1;
    for (int i = n - c + 1; i <= n; i++) miss *= 1.0 - (double)k / i;
    return 1 - miss;
}

/* 1 right, 0 wrong, NaN: the task cannot be checked. */
static inline double evaluation_check(const RewardInput *in) {
    float score;
    return rewards_verify(in, &score) ? (isnan(score) ? 0 : score > 0.5) : NAN;
}

/* Right share of the most frequent answers among the first k: ties are shared out. An answer that is missing votes for
 * nothing. answers: (k, size) texts, right: (k). */
static inline double majority_right(char (*answers)[128], const double *right, int k) {
    int most = 0, winners = 0;
    double sum = 0;
    for (int i = 0; i < k; i++) {
        if (!answers[i][0]) continue;
        int votes = 0, first = i;
        double good = 0;
        for (int j = 0; j < k; j++)
            if (!strcmp(answers[i], answers[j])) {
                votes++, good += right[j];
                if (j < first) first = j;
            }
        if (first < i) continue; /* counted already */
        if (votes > most) most = votes, winners = 0, sum = 0;
        if (votes == most) winners++, sum += good / votes > 0.5;
    }
    return winners ? sum / winners : 0;
}

/* Mean rightness of the samples of the largest reward. */
static inline double best_right(const float *reward, const double *right, int n) {
    float best = -INFINITY;
    for (int i = 0; i < n; i++)
        if (reward[i] > best) best = reward[i];
    double sum = 0, count = 0;
    for (int i = 0; i < n; i++)
        if (reward[i] == best) sum += right[i], count++;
    return count ? sum / count : 0;
}

/* Called for each completion, in the order of prompts; sample -1 is the greedy one. */
typedef void (*EvaluationWatch)(void *context, int64_t prompt, int sample, const char *text, double right,
                                const Completion *c);

/* Evaluates prompts [first, first + count). how: sampling of the n samples (their ids are count from the prompt's index,
 * so that a prompt's samples never depend on which prompts are evaluated). rewards: for best@n, or NULL. */
static inline bool evaluate_tasks(Evaluation *v, Rollout *engine, const Sampling *how, const Prompts *p, int64_t first,
                                  int64_t count, const ModelText *text, Rewards *rewards, EvaluationWatch watch,
                                  void *context, Error *e) {
    const int n = v->samples, most = n > 1 ? n : 1;
    Completion *out = (Completion *)xcalloc((size_t)count * (size_t)most, sizeof *out);
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)count, sizeof *q);
    RewardInput *in = (RewardInput *)xcalloc((size_t)most, sizeof *in);
    char **said = (char **)xcalloc((size_t)most, sizeof *said), (*answers)[128];
    answers = (char(*)[128])xcalloc((size_t)most, sizeof *answers);
    double *right = (double *)xcalloc((size_t)most, sizeof *right);
    float *reward = (float *)xcalloc((size_t)most, sizeof *reward), *parts = NULL;
    if (rewards) parts = (float *)xcalloc((size_t)most * (size_t)rewards->count, sizeof *parts);
    bool ok = true;
    v->greedy = v->tokens = v->finished = v->best = 0;
    v->prompts = v->unscorable = 0, v->ks = 0;
    for (int k = 1; k <= n && v->ks < EVALUATION_KS; k *= 2) {
        v->pass[v->ks] = v->majority[v->ks] = 0;
        v->k[v->ks++] = k;
    }
    for (int pass = 0; ok && pass < (n > 0 ? 2 : 1); pass++) { /* greedy, then samples */
        const int samples = pass ? n : 1;
        Sampling s = *how;
        if (!pass) s.temperature = 0;
        for (int64_t i = 0; i < count; i++)
            q[i] = (RolloutRequest){.prompt = prompts_tokens(p, first + i), .prompt_len = prompts_length(p, first + i),
                                    .samples = samples, .id = (uint64_t)(first + i) * (uint64_t)most,
                                    .out = out + i * samples};
        ok = rollout_run(engine, &s, q, count, NULL, NULL, e);
        for (int64_t i = 0; ok && i < count; i++) {
            int correct = 0;
            bool scorable = true;
            for (int k = 0; k < samples; k++) {
                const Completion *c = &q[i].out[k];
                said[k] = model_text_decode(text, c->tokens, c->count, false);
                in[k] = prompts_input(p, first + i, said[k], c, q[i].id + (uint64_t)k, s.max_new);
                right[k] = evaluation_check(&in[k]);
                scorable &= !isnan(right[k]);
                correct += right[k] > 0.5;
                if (!reward_final_answer(said[k], in[k].task, answers[k], sizeof answers[k])) answers[k][0] = 0;
                if (watch) watch(context, first + i, pass ? k : -1, said[k], right[k], c);
            }
            if (!pass) {
                v->prompts += scorable, v->unscorable += !scorable;
                v->greedy += scorable ? right[0] : 0;
                v->tokens += q[i].out[0].count, v->finished += q[i].out[0].finished;
            } else if (scorable) {
                for (int k = 0; k < v->ks; k++) {
                    v->pass[k] += pass_at_k(n, correct, v->k[k]);
                    v->majority[k] += majority_right(answers, right, v->k[k]);
                }
                if (rewards) {
                    ok = rewards_score(rewards, in, n, parts, reward, e);
                    v->best += ok ? best_right(reward, right, n) : 0;
                }
            }
            for (int k = 0; k < samples; k++) free(said[k]);
        }
        for (int64_t i = 0; i < count * samples; i++) completion_free(&out[i]);
    }
    const double N = v->prompts ? (double)v->prompts : NAN;
    v->greedy /= N, v->tokens /= (double)count, v->finished /= (double)count;
    v->greedy_error = sqrt(v->greedy * (1 - v->greedy) / N);
    v->best = rewards && n > 0 ? v->best / N : NAN;
    for (int k = 0; k < v->ks; k++) v->pass[k] /= N, v->majority[k] /= N;
    free(out), free(q), free(in), free(said), free(answers), free(right), free(reward), free(parts);
    return ok;
}

#endif
