/* evaluation.h - accuracy on verifiable tasks: greedy accuracy, pass@k, majority@k, best-of-n.
 *
 * For each prompt n samples are drawn, and the verifier of its task decides which are correct. Each figure is a mean
 * over prompts. Its error is the standard error over prompts, because the samples of one prompt are not independent.
 *
 *   pass@k       probability that at least one of k samples is correct: 1 - C(n-c, k) / C(n, k) with c of n correct,
 *                the unbiased estimator of Chen et al. 2021, eq. 1
 *   majority@k   whether the most frequent final answer of k samples is correct (self-consistency: Wang et al. 2022);
 *                the mean over subsets of k of the n samples, and over tied answers (votes.h)
 *   best@k       whether the sample with the highest reward among k is correct; the mean over all subsets of k of the n
 *                samples, and over ties
 *   weighted@k   like majority@k with weighted votes (votes.h): by a reward model, the final answer with the largest sum of
 *                probabilities (reward_model_probability) wins (Li et al. 2023, DIVERSE, section 3.2)
 *
 * Rewards are either named parts (rewards.h) or the scores of a reward model (reward_model.h) in Evaluation.judge.
 *
 * Prompts whose task has no verifier, or that lack what the verifier needs, are counted and left out of the means. So are
 * samples that a tool or the sandbox has lost, which are neither right nor wrong: the figures of their prompt are those of
 * its other samples, and it has none for a k above their number.
 *
 *     Evaluation v = {.samples = 8};
 *     evaluate_tasks(&v, &engine, &sampling, &prompts, 0, prompts.count, &model_text, &rewards, NULL, NULL, &e);
 *
 * To summarise a subset of the prompts, such as one task, keep the outcomes and summarise a subset of them:
 *
 *     v.outcome = (Outcome *)xcalloc((size_t)prompts.count, sizeof(Outcome));     // before evaluate_tasks()
 *     Evaluation part = {.samples = v.samples, .judge = v.judge};
 *     evaluation_summarise(&part, v.outcome, n);                                  // the first n prompts
 */
#ifndef LLMC_ROLLOUT_EVALUATION_H
#define LLMC_ROLLOUT_EVALUATION_H

#include "../base/error.h"             /* xcalloc, Error, xmalloc */
#include "../model/model_text.h"       /* ModelText */
#include "../reward/code_reward.h"     /* CodeScorer, CodeVerdict, CODE_REWARD_ALL, code_reward */
#include "../reward/reward_model.h"    /* RewardItem, RewardModel, reward_model_probability, reward_model_score */
#include "../reward/rewards.h"         /* Rewards, rewards_score */
#include "../reward/verify.h"          /* VERIFY_CODE, verify_kind, rewards_answer, rewards_verify */
#include "../reward/verify_answer.h"   /* RewardInput, verify_completion */
#include "../reward/verify_rational.h" /* VERIFY_NUMBER_SIZE, rational_available */
#include "certainty.h"                 /* Certainty, certainty_score */
#include "prompts.h"                   /* Prompts, prompts_empty, prompts_input, prompts_item, ... */
#include "rollout.h"                   /* Completion, RolloutRequest, Sampling, completion_drawn, ... */
#include "trajectory.h"                /* trajectory_lost, trajectory_reward */
#include "votes.h"                     /* VOTES_REWARD, votes_at_k, VOTES_CERTAINTY, VotesWeight */

enum { EVALUATION_KS = 16 };

/* The outcome of one prompt. */
typedef struct Outcome {
    bool scorable, finished; /* finished, tokens, greedy: of the greedy completion */
    double greedy, tokens;
    double pass[EVALUATION_KS], majority[EVALUATION_KS], best[EVALUATION_KS], weighted[EVALUATION_KS];
    double reward; /* mean over the samples with a reward; NaN if there are none */
    int lost;      /* samples that could not be verified */
} Outcome;

typedef struct Evaluation {
    int samples;          /* n; 0: greedy only */
    Outcome *outcome;     /* (prompts) owned by the caller; NULL: outcomes are not kept */
    CodeScorer *code;     /* verifies completions that are programs; NULL: they cannot be verified */
    RewardModel *judge;   /* scores the samples; NULL: rewards score them, or they have no score */
    VotesWeight vote;     /* VOTES_REWARD: votes are weighted by the judge, if there is one */
    Certainty *certainty; /* of the model, for VOTES_CERTAINTY */
    /* results: means over the scorable prompts */
    int64_t prompts, unscorable, lost; /* lost: samples of these prompts that could not be verified */
    double greedy, greedy_error;
    double tokens, finished;  /* greedy completions of all prompts: mean length, fraction not truncated */
    int ks, k[EVALUATION_KS]; /* 1, 2, 4, ... and n */
    double pass[EVALUATION_KS], pass_error[EVALUATION_KS];
    double majority[EVALUATION_KS], majority_error[EVALUATION_KS];
    double best[EVALUATION_KS], best_error[EVALUATION_KS];         /* NaN without rewards */
    double weighted[EVALUATION_KS], weighted_error[EVALUATION_KS]; /* NaN without weights */
    double reward, reward_error; /* mean over the samples (or greedy completions) of all prompts; NaN without rewards */
} Evaluation;

/* ---- estimators ------------------------------------------------------------------------------------------------ */

/* C(m, k) / C(n, k): the fraction of the k-subsets of n items that contain only m given items. Computed as a product
 * that neither overflows nor cancels. */
static inline double subset_share(int n, int m, int k) {
    if (m < k) return 0;
    double share = 1;
    for (int i = m + 1; i <= n; i++) share *= 1.0 - (double)k / i;
    return share;
}

/* 1 - C(n-c, k) / C(n, k) with c of n samples correct, 1 <= k <= n. */
static inline double pass_at_k(int n, int c, int k) { return 1 - subset_share(n, n - c, k); }

/* The probability that the sample with the highest reward among k of n is correct. Samples with equal rewards form a
 * group, which contains the highest with probability [C(not above it, k) - C(below it, k)] / C(n, k). A NaN reward is
 * below all others. */
static inline double best_at_k(const float *reward, const double *right, int n, int k) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        int below = 0, same = 0, first = i;
        double good = 0;
        for (int j = 0; j < n; j++) {
            const float a = isnan(reward[i]) ? -INFINITY : reward[i], b = isnan(reward[j]) ? -INFINITY : reward[j];
            below += b < a;
            if (a != b) continue;
            same++;
            good += right[j];
            if (j < first) first = j;
        }
        if (first == i) sum += (subset_share(n, below + same, k) - subset_share(n, below, k)) * good / same;
    }
    return sum;
}

/* Wilson's 95 % confidence interval of a fraction p of n (Wilson 1927). */
static inline void wilson_interval(double p, double n, double *low, double *high) {
    const double z = 1.959963984540054, shrink = 1 + z * z / n, middle = p + z * z / (2 * n);
    const double half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n));
    *low = n > 0 ? (p > 0 ? (middle - half) / shrink : 0) : NAN;
    *high = n > 0 ? (p < 1 ? (middle + half) / shrink : 1) : NAN;
}

/* ---- summaries ------------------------------------------------------------------------------------------------- */

/* The mean of a field of the outcomes and its standard error, without NaN values. offset: of the field, in bytes. */
static inline void outcome_mean(const Outcome *o, int64_t n, bool scorable_only, size_t offset, double *mean,
                                double *error) {
    double sum = 0, squares = 0, count = 0;
    for (int pass = 0; pass < 2; pass++) { /* the second pass sums squared differences from the mean */
        for (int64_t i = 0; i < n; i++) {
            const double x = *(const double *)((const char *)&o[i] + offset);
            if (isnan(x) || (scorable_only && !o[i].scorable)) continue;
            if (!pass) {
                sum += x;
                count++;
            } else {
                squares += (x - sum / count) * (x - sum / count);
            }
        }
    }
    *mean = count ? sum / count : NAN;
    *error = count > 1 ? sqrt(squares / (count - 1) / count) : NAN;
}

/* Sets v->k to 1, 2, 4, ... and n. */
static inline void evaluation_ks(Evaluation *v) {
    v->ks = 0;
    for (int k = 1; k < v->samples && v->ks < EVALUATION_KS - 1; k *= 2) v->k[v->ks++] = k;
    if (v->samples > 0) v->k[v->ks++] = v->samples;
}

/* Fills in v's results from n outcomes with v->samples samples each. */
static inline void evaluation_summarise(Evaluation *v, const Outcome *o, int64_t n) {
    double unused;
    evaluation_ks(v);
    v->prompts = v->lost = 0;
    v->finished = 0;
    for (int64_t i = 0; i < n; i++) {
        v->prompts += o[i].scorable;
        v->lost += o[i].scorable ? o[i].lost : 0;
        v->finished += o[i].finished;
    }
    v->unscorable = n - v->prompts;
    v->finished /= (double)n;
    outcome_mean(o, n, false, offsetof(Outcome, tokens), &v->tokens, &unused);
    outcome_mean(o, n, true, offsetof(Outcome, greedy), &v->greedy, &unused);
    v->greedy_error = sqrt(v->greedy * (1 - v->greedy) / (double)v->prompts);
    for (int k = 0; k < v->ks; k++) {
        const size_t at = (size_t)k * sizeof(double);
        outcome_mean(o, n, true, offsetof(Outcome, pass) + at, &v->pass[k], &v->pass_error[k]);
        outcome_mean(o, n, true, offsetof(Outcome, majority) + at, &v->majority[k], &v->majority_error[k]);
        outcome_mean(o, n, true, offsetof(Outcome, best) + at, &v->best[k], &v->best_error[k]);
        outcome_mean(o, n, true, offsetof(Outcome, weighted) + at, &v->weighted[k], &v->weighted_error[k]);
    }
    outcome_mean(o, n, false, offsetof(Outcome, reward), &v->reward, &v->reward_error);
}

/* ---- evaluation ------------------------------------------------------------------------------------------------ */

/* 1: correct, 0: wrong, NaN: the record cannot be verified. */
static inline double evaluation_check(const RewardInput *in) {
    float score;
    return rewards_verify(in, &score) && !isnan(score) ? score > 0.5 : NAN;
}

/* evaluation_check() of n completions, of which those that are programs are run if there is a sandbox. Fails only if the
 * sandbox fails. */
static inline bool evaluation_check_all(const RewardInput *in, int n, CodeScorer *code, double *right, Error *e) {
    RewardInput *program = (RewardInput *)xcalloc((size_t)n + 1, sizeof *program);
    CodeVerdict *verdict = (CodeVerdict *)xcalloc((size_t)n + 1, sizeof *verdict);
    int programs = 0;
    for (int i = 0; i < n; i++) {
        right[i] = evaluation_check(&in[i]);
        if (code && verify_kind(in[i].task) == VERIFY_CODE) program[programs++] = in[i];
    }
    const bool ok = !programs || code->score(code, program, programs, true, verdict, e);
    for (int i = 0, k = 0; ok && programs && i < n; i++)
        if (verify_kind(in[i].task) == VERIFY_CODE) right[i] = code_reward(&verdict[k++], CODE_REWARD_ALL, 0);
    free(program), free(verdict);
    return ok;
}

/* The number of prompts whose completions can be verified. */
static inline int64_t evaluation_verifiable(const Prompts *p) {
    int64_t count = 0;
    for (int64_t i = 0; i < p->count; i++) {
        const RewardInput in = prompts_empty(p, i);
        count += !isnan(evaluation_check(&in));
    }
    return count;
}

/* The completion's final answer, or "" if it has none. The caller frees it. */
static inline char *evaluation_answer(const RewardInput *in) {
    const size_t size = 4 * verify_completion(in).n + VERIFY_NUMBER_SIZE;
    char *answer = (char *)xmalloc(size);
    if (!rewards_answer(in, answer, size)) answer[0] = 0;
    return answer;
}

/* One completion, as passed to an EvaluationWatch. */
typedef struct EvaluationSample {
    int64_t prompt;
    int sample; /* -1: the greedy completion */
    const char *text;
    double right;  /* 1: correct, 0: wrong, NaN: cannot be verified */
    double reward; /* NaN: no reward */
    const Completion *completion;
} EvaluationSample;

/* Called for each completion: first for the greedy ones in the order of prompts, then for the samples. */
typedef void (*EvaluationWatch)(void *context, const EvaluationSample *s);

/* The completions of one prompt. */
typedef struct EvaluationPrompt {
    char **said;           /* (n) of evaluation_verify() */
    const RewardInput *in; /* (n) the same */
    double *right;         /* (n) the same: 1: correct, 0: wrong, NaN: cannot be verified */
    const Completion *out; /* (n) */
    char **answers;        /* scratch: (n), and what follows */
    double *weight;        /* (n) */
    RewardItem *item;      /* (n) */
    float *reward, *parts; /* (n), (n, parts) */
} EvaluationPrompt;

/* Scores n completions by the rewards or by the judge. */
static inline bool evaluation_rewards(const Evaluation *v, EvaluationPrompt *j, int n, Rewards *rewards, Error *e) {
    if (v->judge && !reward_model_score(v->judge, j->item, n, j->reward, e)) return false;
    if (!v->judge && rewards && !rewards_score(rewards, j->in, n, j->parts, j->reward, e)) return false;
    for (int i = 0; v->judge && i < n; i++) j->weight[i] = reward_model_probability(v->judge, j->reward[i]);
    for (int i = 0; i < n; i++) j->reward[i] = trajectory_reward(j->out[i].trajectory, j->reward[i]);
    return true;
}

/* Whether votes have weights. */
static inline bool evaluation_weighted(const Evaluation *v) { return v->judge || v->vote != VOTES_REWARD; }

/* The weights of the votes of n completions that need no reward. */
static inline bool evaluation_weights(const Evaluation *v, EvaluationPrompt *j, int n, Error *e) {
    for (int i = 0; i < n && v->vote != VOTES_REWARD; i++) {
        const Completion *c = &j->out[i];
        const int32_t drawn = completion_drawn(c);
        double sum = 0;
        for (int32_t k = 0; k < c->count; k++) sum += c->logp[k];
        j->weight[i] = drawn ? exp(sum / drawn) : 0;
        if (v->vote == VOTES_CERTAINTY &&
            !certainty_score(v->certainty, j->item[i].prompt, j->item[i].prompt_len, c, &j->weight[i], e))
            return false;
    }
    return true;
}

/* Computes pass, majority, best, weighted and reward from the samples of one prompt. */
static inline bool evaluation_samples(const Evaluation *v, Outcome *o, EvaluationPrompt *j, Rewards *rewards,
                                      Error *e) {
    const int most = v->samples;
    char *answers[most];
    double right[most], weight[most], sum = 0;
    float reward[most];
    int n = 0, correct = 0, rewarded = 0; /* n: samples that could be verified */
    if (!evaluation_rewards(v, j, most, rewards, e) || !evaluation_weights(v, j, most, e)) return false;
    for (int i = 0; i < most; i++) {
        if (!isnan(j->reward[i])) {
            sum += j->reward[i];
            rewarded++;
        }
        if (isnan(j->right[i])) continue;
        answers[n] = j->answers[i];
        right[n] = j->right[i];
        weight[n] = j->weight[i];
        reward[n] = j->reward[i];
        correct += right[n++] > 0.5;
    }
    o->reward = rewarded ? sum / rewarded : NAN;
    o->lost = most - n;
    for (int k = 0; k < v->ks; k++) {
        const bool enough = v->k[k] <= n;
        o->pass[k] = enough ? pass_at_k(n, correct, v->k[k]) : NAN;
        o->majority[k] = enough ? votes_at_k(answers, right, NULL, n, v->k[k]) : NAN;
        o->best[k] = enough && (rewards || v->judge) ? best_at_k(reward, right, n, v->k[k]) : NAN;
        o->weighted[k] = enough && evaluation_weighted(v) ? votes_at_k(answers, right, weight, n, v->k[k]) : NAN;
    }
    return true;
}

/* Verifies the completions of all requests. said, in, right: (requests, samples) their texts, which the caller frees, their
 * reward inputs, and whether they are right. */
static inline bool evaluation_verify(const Evaluation *v, const RolloutRequest *q, int64_t count, const Prompts *p,
                                     int64_t first, const Sampling *how, const ModelText *text, char **said,
                                     RewardInput *in, double *right, Error *e) {
    const int samples = count ? q[0].samples : 0, n = (int)count * samples;
    for (int i = 0; i < n; i++) {
        const RolloutRequest *r = &q[i / samples];
        const Completion *c = &r->out[i % samples];
        size_t length;
        said[i] = prompts_said(how, text, c, &length);
        in[i] =
            prompts_input(p, first + i / samples, said[i], length, c, r->id + (uint64_t)(i % samples), how->max_new);
    }
    const bool ok = evaluation_check_all(in, n, v->code, right, e);
    for (int i = 0; i < n; i++)
        if (trajectory_lost(q[i / samples].out[i % samples].trajectory)) right[i] = NAN;
    return ok;
}

/* Evaluates the completions of one prompt: the n samples if sampled, else the greedy completion. */
static inline bool evaluation_judge(const Evaluation *v, Outcome *o, EvaluationPrompt *j, const RolloutRequest *q,
                                    const Prompts *p, int64_t prompt, bool sampled, Rewards *rewards,
                                    EvaluationWatch watch, void *context, Error *e) {
    bool ok = true;
    j->out = q->out;
    for (int k = 0; k < q->samples; k++) {
        j->answers[k] = evaluation_answer(&j->in[k]);
        j->reward[k] = NAN;
        j->item[k] = prompts_item(p, prompt, &q->out[k]);
    }
    if (sampled) {
        ok = evaluation_samples(v, o, j, rewards, e);
    } else {
        o->scorable = !isnan(j->right[0]);
        o->greedy = j->right[0];
        o->tokens = completion_drawn(&q->out[0]);
        o->finished = q->out[0].finished;
        if (!v->samples) ok = evaluation_rewards(v, j, 1, rewards, e);
        o->reward = j->reward[0];
    }
    for (int k = 0; k < q->samples; k++) {
        const EvaluationSample s = {.prompt = prompt,
                                    .sample = sampled ? k : -1,
                                    .text = j->said[k],
                                    .right = o->scorable ? j->right[k] : NAN,
                                    .reward = j->reward[k],
                                    .completion = &q->out[k]};
        if (ok && watch) watch(context, &s);
        free(j->answers[k]);
    }
    return ok;
}

/* Evaluates prompts [first, first + count). how: sampling settings of the n samples; their ids are derived from the
 * prompt's index, so that they do not depend on which other prompts are evaluated. text: decodes tokens. rewards: for
 * best@k, or NULL. watch: may be NULL. */
static inline bool evaluate_tasks(Evaluation *v, Rollout *engine, const Sampling *how, const Prompts *p, int64_t first,
                                  int64_t count, const ModelText *text, Rewards *rewards, EvaluationWatch watch,
                                  void *context, Error *e) {
    const int n = v->samples, most = n > 1 ? n : 1;
    if (!rational_available(e)) return false;
    Outcome *outcome = v->outcome ? v->outcome : (Outcome *)xcalloc((size_t)count, sizeof *outcome);
    Completion *out = (Completion *)xcalloc((size_t)count * (size_t)most, sizeof *out);
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)count, sizeof *q);
    EvaluationPrompt j = {.answers = (char **)xcalloc((size_t)most, sizeof(char *)),
                          .weight = (double *)xcalloc((size_t)most, sizeof(double)),
                          .item = (RewardItem *)xcalloc((size_t)most, sizeof(RewardItem)),
                          .reward = (float *)xcalloc((size_t)most, sizeof(float))};
    if (rewards) j.parts = (float *)xcalloc((size_t)most * (size_t)rewards->count, sizeof *j.parts);
    char **said = (char **)xcalloc((size_t)count * (size_t)most + 1, sizeof *said);
    RewardInput *in = (RewardInput *)xcalloc((size_t)count * (size_t)most + 1, sizeof *in);
    double *right = (double *)xcalloc((size_t)count * (size_t)most + 1, sizeof *right);
    bool ok = true;
    evaluation_ks(v);
    for (int pass = 0; ok && pass < (n > 0 ? 2 : 1); pass++) { /* greedy, then samples */
        const int samples = pass ? n : 1;
        Sampling s = *how;
        if (!pass) s.temperature = 0;
        for (int64_t i = 0; i < count; i++)
            q[i] = prompts_request(p, first + i, samples, (uint64_t)(first + i) * (uint64_t)most, out + i * samples);
        ok = rollout_run(engine, &s, q, count, NULL, NULL, e) &&
             evaluation_verify(v, q, count, p, first, &s, text, said, in, right, e);
        for (int64_t i = 0; ok && i < count; i++) {
            j.said = said + i * samples;
            j.in = in + i * samples;
            j.right = right + i * samples;
            ok = evaluation_judge(v, &outcome[i], &j, &q[i], p, first + i, pass, rewards, watch, context, e);
        }
        for (int64_t i = 0; i < count * samples; i++) {
            completion_free(&out[i]), free(said[i]);
            said[i] = NULL;
        }
    }
    if (ok) evaluation_summarise(v, outcome, count);
    free(out), free(q), free(said), free(in), free(right);
    free(j.answers), free(j.weight), free(j.item), free(j.reward), free(j.parts);
    if (!v->outcome) free(outcome);
    return ok;
}

#endif
