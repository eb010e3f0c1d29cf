/* online_pairs.h - preference pairs sampled during training, scored by a reward model or verifiers.
 *
 *   online_dpo   both from the policy                                       OAIF: Guo et al. 2024 (2402.04792)
 *   xpo          one from the policy, one from the reference                Xie et al. 2024 (2405.21046)
 *   nash_md      one from the policy, one from the geometric mixture of     Munos et al. 2023 (2312.00886)
 *                policy and reference (mixture.h)
 *
 * Owns the prompts, the sampling engines, the reward model and the completions of one step (generation.h has the
 * policy's part). The score of a completion is the reward model's score plus the verifiers' reward, minus
 * missing_eos_penalty if the completion was truncated. With --judge and without --reward, a judge compares the two in both
 * orders (../judge/judge.h): the probability P that the first is better is its score, that of the second is 1 - P. A pair
 * is left out if one of its completions could not be scored. Errors end the program (see trainer.h).
 *
 *     OnlinePairs p;
 *     online_open_data(&p, &o.online, &o.g, &trainer, seed);
 *     trainer_open(&trainer, "train_dpo", &trainer_options, &p.g.train.shard, false);
 *     online_open_prompts(&p);
 *     trainer_announce(&trainer, table, rows, slots, online_bytes(&p));
 *     online_open(&p, &reference.model);                                     // reference.h
 *     for (...) {
 *         online_draw(&p);
 *         online_make_pairs(&p, &set);
 *         online_forget(&p);
 *     }
 */
#ifndef LLMC_TRAIN_ONLINE_PAIRS_H
#define LLMC_TRAIN_ONLINE_PAIRS_H

#include "../base/clock.h"             /* clock_seconds */
#include "../base/error.h"             /* xcalloc, usage_error, Error, die */
#include "../base/options.h"           /* OPTION_REAL, OPTION_FLAG, OPTION_CHOICE, OPTION_GROUP, ... */
#include "../judge/judge.h"            /* JudgePair, judge_pairs, judge_use */
#include "../judge/judge_options.h"    /* JUDGE_BY_PAIR, JUDGE_OF_PAIRS, judge_refuse_unused */
#include "../judge/judged.h"           /* JudgeRecord, judge_slice, judge_record, judge_record_free */
#include "../loss/preference.h"        /* PreferenceConfig, PreferenceStats */
#include "../model/config.h"           /* ModelConfig */
#include "../model/model.h"            /* Model */
#include "../records/completion_set.h" /* CompletionSet, completion_set_add, completion_set_clear */
#include "../records/pairs.h"          /* Pair */
#include "../report/metrics.h"         /* metrics_set, metrics_phase, Metrics */
#include "../report/run_facts.h"       /* RUN_REWARD, RUN_SAMPLING, RunPhase */
#include "../reward/reward_model.h"    /* RewardItem, RewardModel, reward_model_close, reward_model_preference, ... */
#include "../reward/verify_answer.h"   /* RewardInput */
#include "../rollout/episodes.h"       /* episodes_on */
#include "../rollout/mixture.h"        /* Mixture, mixture_bytes, mixture_free, mixture_new, ... */
#include "../rollout/prompts.h"        /* prompts_length, Prompts, prompts_input, prompts_item, ... */
#include "../rollout/rollout.h"        /* RolloutRequest, completion_drawn, completion_mask, Completion, ... */
#include "../rollout/trajectory.h"     /* trajectory_lost */
#include "generation.h"                /* ScoredCompletion, Generation, generation_longest_prompt, ... */
#include "generation_options.h"        /* GenerationOptions, generation_refuse_unused */
#include "generation_report.h"         /* generation_check_evaluation, generation_log, generation_log_turns */
#include "preference_options.h"        /* PreferenceOptions */
#include "preference_reference.h"      /* PreferenceReferenceOptions */
#include "trainer.h"                   /* Trainer, trainer_require */

#define ONLINE_CHOICES "online_dpo|xpo|nash_md"
typedef enum { ONLINE_DPO, ONLINE_XPO, ONLINE_NASH_MD } OnlineKind; /* in the order of ONLINE_CHOICES */

typedef struct OnlineOptions {
    bool on, drop_ties;
    double tie;
    int kind;
    const char *reward_model;
    double missing_eos_penalty, xpo_alpha, mixture_coef;
} OnlineOptions;

static inline OnlineOptions online_options(void) { return (OnlineOptions){.xpo_alpha = 1e-5, .mixture_coef = 0.5}; }

// clang-format off
#define ONLINE_OPTIONS(o)                                                                                              \
    OPTION_GROUP ("Online"),                                                                                           \
    OPTION_FLAG  ("online",              0, &(o).on,                                                                   \
                  "sample pairs from the policy; a reward model or verifiers score them"),                             \
    OPTION_CHOICE("online-loss",         0, &(o).kind,                ONLINE_CHOICES,                                  \
                  "which models generate each pair, and with which loss"),                                             \
    OPTION_TEXT  ("reward-model",        0, &(o).reward_model,        "FILE",                                          \
                  "reward model that scores the pairs (a checkpoint from train_rm)"),                                  \
    OPTION_REAL  ("missing-eos-penalty", 0, &(o).missing_eos_penalty, 0, 1e9,                                          \
                  "penalty on the score of a completion without a stop token"),                                        \
    OPTION_FLAG  ("drop-ties",           0, &(o).drop_ties,                                                            \
                  "leave out pairs with equal scores; otherwise the first completion is the chosen one"),              \
    OPTION_REAL  ("tie",                 0, &(o).tie,                 0, 0.5,                                         \
                  "leave out pairs that the judge prefers with a probability closer to 1/2 than this"),                \
    OPTION_REAL  ("xpo-alpha",           0, &(o).xpo_alpha,           0, 1e6, "xpo: weight of the optimism term"),     \
    OPTION_REAL  ("mixture-coef",        0, &(o).mixture_coef,        0, 1,                                            \
                  "nash_md: weight of the reference in the mixture")
// clang-format on

/* Rejects options that contradict each other or have no effect. l: the losses; r: the reference; table: all options. */
static inline void online_check(const OnlineOptions *o, const GenerationOptions *g, const PreferenceOptions *l,
                                const PreferenceReferenceOptions *r, const Option *table) {
    static const char online[] = "used only with --online";
    const OptionUse use[] = {
        {&o->kind, o->on, online},
        {&o->reward_model, o->on, online},
        {&o->missing_eos_penalty, o->on, online},
        {&o->drop_ties, o->on, online},
        {&o->tie, g->judges_pairs, "used only with --online and --judge without --reward"},
        {&o->xpo_alpha, o->on && o->kind == ONLINE_XPO, "used only with --online-loss xpo"},
        {&o->mixture_coef, o->on && o->kind == ONLINE_NASH_MD, "used only with --online-loss nash_md"},
        {&g->reward, o->on, online},
        {&g->reward_cmd, o->on, online},
        {&g->reward_sandbox, o->on, online},
        {&g->max_prompt, o->on, online},
        {&g->max_completion, o->on, online},
        {&g->temperature, o->on, online},
        {&g->top_k, o->on, online},
        {&g->top_p, o->on, online},
        {&g->min_p, o->on, online},
        {&g->repetition_penalty, o->on, online},
        {&g->slots, o->on, online},
        {&g->stop, o->on, online},
        {&g->episodes.tools, o->on, online},
        {&g->episodes.commands, o->on, online},
        {&g->sample_count, o->on, online},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    generation_refuse_unused(g, table, g->reward_cmd != NULL);
    if (!o->on || g->judges_pairs) judge_refuse_unused(&g->judge, table, o->on ? JUDGE_OF_PAIRS : 0, online);
    if (!o->on) return;
    if (preference_uses_gold(&l->pair))
        usage_error("--online: generated pairs have no gold answer, which --loss-type tpo needs; give --tpo-alpha 0");
    if (l->unpaired) usage_error("--online generates pairs; --loss-type kto trains on unpaired completions");
    if (r->precompute)
        usage_error("--online samples its completions during the run; --precompute-ref-log-probs needs them before it");
    if (o->kind == ONLINE_NASH_MD && episodes_on(&g->episodes))
        usage_error("--online-loss nash_md: cannot be combined with --tools and --tool-cmd");
    if (!o->reward_model && !g->reward && !g->reward_cmd && !g->judges_pairs)
        usage_error("--online: give --reward-model, --reward, --reward-cmd or --judge to score the pairs");
    if (g->judges_pairs && o->reward_model)
        usage_error("--judge and --reward-model: give only one of them to choose between two completions");
    if (o->kind != ONLINE_DPO && r->none)
        usage_error("--reference-free: --online-loss xpo and nash_md sample from the reference");
    if (o->kind == ONLINE_NASH_MD && (strcmp(l->losses, "sigmoid") || l->rpo_alpha > 0 || o->drop_ties))
        usage_error(
            "--online-loss nash_md has its own loss and no pairs; omit --loss-type, --rpo-alpha and --drop-ties");
}

typedef struct OnlinePairs {
    const OnlineOptions *o; /* the command line */
    OnlineKind kind;
    Generation g;             /* the policy's completions: two per prompt for online_dpo, else one */
    ScoredCompletion *second; /* (prompts) completions of the other model; not for online_dpo */
    Rollout other;
    Mixture mixture;
    RewardModel judge;
    int32_t count;      /* prompts of this step */
    float *linear;      /* (2 pairs of the step) xpo: weight of the optimism term on each completion */
    float *probability; /* (pairs of the step) probability that the policy's completion is preferred */
} OnlinePairs;

static inline ScoredCompletion *online_completion(const OnlinePairs *p, int32_t i, int k) {
    if (p->kind == ONLINE_DPO) return &p->g.scored[2 * i + k];
    return k ? &p->second[i] : &p->g.scored[i];
}

/* Opens the verifiers and the training shard. Call it before trainer_open(). */
static inline void online_open_data(OnlinePairs *p, const OnlineOptions *o, GenerationOptions *g, Trainer *t,
                                    uint64_t seed) {
    *p = (OnlinePairs){.o = o, .kind = (OnlineKind)o->kind};
    g->generations = p->kind == ONLINE_DPO ? 2 : 1;
    generation_open_data(&p->g, g, t, seed, g->reward != NULL || g->reward_cmd != NULL);
}

/* Memory of the sampling engines in bytes, for trainer_announce(). The reward model is open by then. */
static inline size_t online_bytes(const OnlinePairs *p) {
    const Generation *g = &p->g;
    const ModelConfig *c = &g->t->model.config;
    const int prompt = generation_longest_prompt(g), most = (int)g->o->max_completion, slots = (int)g->o->slots;
    size_t bytes = generation_bytes(g);
    if (p->kind != ONLINE_DPO) bytes += rollout_bytes(c, g->t->backend, slots, prompt, most);
    if (p->kind == ONLINE_NASH_MD) bytes += mixture_bytes(c, c, g->t->backend, slots, prompt, most);
    return bytes;
}

/* Reads the prompts and opens the reward model. Call it after trainer_open(). */
static inline void online_open_prompts(OnlinePairs *p) {
    generation_open_prompts(&p->g, 1);
    if (p->o->reward_model) {
        generation_open_reward_model(&p->g, &p->judge, "reward-model", p->o->reward_model);
        p->g.judge = &p->judge;
    }
    generation_open_models(&p->g, NULL);
    if (p->g.o->judges_pairs) {
        Error e;
        if (!judge_use(&p->g.language_judge, JUDGE_BY_PAIR, &e)) die("%s", e.text);
        generation_say_judge(&p->g, 2);
    }
    generation_check_evaluation(&p->g);
}

/* Opens the sampling engines. Call it after trainer_announce(). reference: the other model of xpo and nash_md. */
static inline void online_open(OnlinePairs *p, const Model *reference) {
    Error e;
    Generation *g = &p->g;
    const int prompt = generation_longest_prompt(g), most = (int)g->o->max_completion;
    generation_open(g);
    p->linear = (float *)xcalloc(2 * (size_t)g->o->prompts, sizeof *p->linear);
    p->probability = (float *)xcalloc((size_t)g->o->prompts, sizeof *p->probability);
    if (p->kind == ONLINE_DPO) return;
    p->second = (ScoredCompletion *)xcalloc((size_t)g->o->prompts, sizeof *p->second);
    const Model *from = p->kind == ONLINE_XPO ? reference : &g->t->model;
    if (!rollout_new(&p->other, from, (int)g->o->slots, prompt, most, &e) ||
        (p->kind == ONLINE_NASH_MD && !mixture_new(&p->mixture, &p->other, reference, p->o->mixture_coef, &e)))
        die("%s; lower --slots", e.text);
    p->other.turns = g->engine.turns;
    p->other.flops = g->engine.flops;
}

/* Samples one completion of each prompt of this step from the other model. */
static inline void online_draw_second(OnlinePairs *p) {
    Error e;
    Generation *g = &p->g;
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)p->count, sizeof *q);
    if (p->kind == ONLINE_NASH_MD) mixture_refresh(&p->mixture);
    for (int32_t i = 0; i < p->count; i++) {
        const int64_t prompt = g->scored[i].prompt;
        p->second[i] = (ScoredCompletion){.prompt = prompt, .id = g->next_id++};
        q[i] = prompts_request(&g->train, prompt, 1, p->second[i].id, &p->second[i].completion);
    }
    if (!rollout_run(&p->other, &g->sampling, q, p->count, NULL, NULL, &e)) die("%s: %s", g->train.shard.name, e.text);
    for (int32_t i = 0; i < p->count; i++)
        g->t->tokens += prompts_length(&g->train, p->second[i].prompt) + p->second[i].completion.count;
    free(q);
}

/* Adds the reward model's scores and subtracts the penalty. */
static inline void online_judge(OnlinePairs *p, ScoredCompletion *scored, int32_t n) {
    Error e;
    const Prompts *prompts = &p->g.train;
    RewardItem *item = (RewardItem *)xcalloc((size_t)n, sizeof *item);
    float *score = (float *)xcalloc((size_t)n, sizeof *score);
    for (int32_t i = 0; i < n; i++) item[i] = prompts_item(prompts, scored[i].prompt, &scored[i].completion);
    if (p->o->reward_model && !reward_model_score(&p->judge, item, n, score, &e)) die("%s", e.text);
    for (int32_t i = 0; i < n; i++) {
        scored[i].reward += score[i];
        if (!scored[i].completion.finished) scored[i].reward -= (float)p->o->missing_eos_penalty;
    }
    free(item), free(score);
}

/* Asks the judge which completion of each pair is better. */
static inline void online_compare(OnlinePairs *p) {
    Error e;
    Generation *g = &p->g;
    const size_t n = (size_t)p->count;
    JudgePair *pair = (JudgePair *)xcalloc(n, sizeof *pair);
    JudgeRecord *record = (JudgeRecord *)xcalloc(n, sizeof *record);
    double *better = (double *)xcalloc(n, sizeof *better);
    for (int32_t i = 0; i < p->count; i++) {
        const ScoredCompletion *a = online_completion(p, i, 0), *b = online_completion(p, i, 1);
        const RewardInput in = prompts_input(&g->train, a->prompt, a->text, a->text_length, &a->completion, a->id, 0);
        record[i] = judge_record(&in);
        pair[i] = (JudgePair){.prompt = record[i].prompt,
                              .answer = judge_slice(in.answer),
                              .a = {a->text, a->text_length},
                              .b = {b->text, b->text_length},
                              .key = a->id};
    }
    trainer_require(g->t, judge_pairs(&g->language_judge, pair, p->count, better, NULL, &e), &e);
    for (int32_t i = 0; i < p->count; i++) {
        ScoredCompletion *both[] = {online_completion(p, i, 0), online_completion(p, i, 1)};
        for (int k = 0; k < 2; k++) {
            const bool lost = trajectory_lost(both[k]->completion.trajectory);
            both[k]->reward = lost ? NAN : (float)(k ? 1 - better[i] : better[i]);
            if (!both[k]->completion.finished) both[k]->reward -= (float)p->o->missing_eos_penalty;
        }
        judge_record_free(&record[i]);
    }
    free(pair), free(record), free(better);
}

/* Samples and scores two completions of each prompt of a step. */
static inline void online_draw(OnlinePairs *p) {
    Generation *g = &p->g;
    const double start = clock_seconds();
    const RunPhase phase = metrics_phase(&g->t->metrics, RUN_SAMPLING);
    p->count = (int32_t)g->o->prompts;
    generation_sample(g, 0, p->count);
    if (p->kind != ONLINE_DPO) online_draw_second(p);
    const double judging = clock_seconds();
    metrics_phase(&g->t->metrics, RUN_REWARD);
    generation_score(g, 0, p->count);
    online_judge(p, g->scored, g->completions);
    if (p->kind != ONLINE_DPO) {
        generation_score_completions(g, p->second, p->count);
        online_judge(p, p->second, p->count);
    }
    if (g->o->judges_pairs) online_compare(p);
    g->gen_seconds = judging - start;
    g->reward_seconds = clock_seconds() - judging;
    metrics_phase(&g->t->metrics, phase);
}

/* The probability that the completion with the higher score by `difference` is preferred. */
static inline double online_preference(const OnlinePairs *p, double difference) {
    if (p->g.o->judges_pairs) return fmin(fmax((1 + difference) / 2, 0), 1);
    return reward_model_preference(p->o->reward_model ? &p->judge : NULL, difference);
}

/* Whether a pair is left out because its scores are too close. */
static inline bool online_tied(const OnlinePairs *p, const ScoredCompletion *a, const ScoredCompletion *b) {
    const double difference = fabs((double)a->reward - b->reward);
    return (p->o->drop_ties && difference == 0) || difference < 2 * p->o->tie;
}

/* Makes a set of the step's scored pairs, the better completion chosen. nash_md: a set of the policy's completions
 * alone. */
static inline void online_make_pairs(OnlinePairs *p, CompletionSet *s) {
    completion_set_clear(s);
    for (int32_t i = 0; i < p->count; i++) {
        const ScoredCompletion *a = online_completion(p, i, 0), *b = online_completion(p, i, 1);
        if (isnan(a->reward) || isnan(b->reward) || online_tied(p, a, b)) continue;
        const bool nash = p->kind == ONLINE_NASH_MD, first = nash || a->reward >= b->reward;
        const Completion *w = first ? &a->completion : &b->completion, *l = first ? &b->completion : &a->completion;
        const Pair pair = {.prompt = prompts_tokens(&p->g.train, a->prompt),
                           .prompt_len = prompts_length(&p->g.train, a->prompt),
                           .chosen = w->tokens,
                           .chosen_len = w->count,
                           .rejected = l->tokens,
                           .rejected_len = nash ? 0 : l->count,
                           .chosen_mask = completion_mask(w),
                           .rejected_mask = nash ? NULL : completion_mask(l)};
        p->probability[s->count] = (float)online_preference(p, (double)a->reward - b->reward);
        for (int k = 0; k < 2; k++) /* xpo: the optimism term is on the reference's completion */
            p->linear[2 * s->count + k] = p->kind == ONLINE_XPO && k == first ? (float)p->o->xpo_alpha : 0;
        completion_set_add(s, &pair, i);
    }
}

/* Frees the completions of the step. */
static inline void online_forget(OnlinePairs *p) {
    if (p->second) {
        for (int32_t i = 0; i < p->count; i++) {
            completion_free(&p->second[i].completion);
            free(p->second[i].text);
            p->second[i] = (ScoredCompletion){0};
        }
    }
    generation_forget(&p->g, 0);
}

/* Means over a step, for the metrics. */
typedef struct OnlineSummary {
    double score, margin; /* score of all completions; higher minus lower score of each pair */
    double ended, length; /* fraction with a stop token; tokens */
    double probability;   /* that the policy's completion is preferred */
    int32_t pairs, ties;  /* pairs with two scores; those with equal scores */
} OnlineSummary;

static inline OnlineSummary online_summary(const OnlinePairs *p) {
    OnlineSummary s = {0};
    for (int32_t i = 0; i < p->count; i++) {
        const ScoredCompletion *a = online_completion(p, i, 0), *b = online_completion(p, i, 1);
        s.ended += a->completion.finished + b->completion.finished;
        s.length += completion_drawn(&a->completion) + completion_drawn(&b->completion);
        if (isnan(a->reward) || isnan(b->reward)) continue;
        s.pairs++;
        s.ties += a->reward == b->reward;
        s.score += a->reward + b->reward;
        s.margin += fabs((double)a->reward - b->reward);
        s.probability += (float)online_preference(p, (double)a->reward - b->reward);
    }
    s.ended /= 2 * p->count;
    s.length /= 2 * p->count;
    s.score /= 2 * s.pairs; /* NaN without a pair */
    s.margin /= s.pairs;
    s.probability /= s.pairs;
    return s;
}

/* Sets the metrics of TRL's OnlineDPOTrainer, under its names. c, s: the loss and its totals over
 * the step. */
static inline void online_log(OnlinePairs *p, const OnlineSummary *w, const PreferenceConfig *c,
                              const PreferenceStats *s) {
    Metrics *m = &p->g.t->metrics;
    const bool nash = p->kind == ONLINE_NASH_MD;
    const double completions = (nash ? 1 : 2) * s->pairs;
    const double kl = (s->chosen_ratio + (nash ? 0 : s->rejected_ratio)) / completions;
    metrics_set(m, "objective/scores", w->score);
    metrics_set(m, "objective/scores_margin", w->margin);
    metrics_set(m, "objective/kl", kl);
    metrics_set(m, "objective/entropy", -(s->chosen_logp + (nash ? 0 : s->rejected_logp)) / completions);
    metrics_set(m, "objective/non_score_reward", 0 - c->beta * kl);
    metrics_set(m, "objective/rlhf_reward", w->score - c->beta * kl);
    metrics_set(m, "val/contain_eos_token", w->ended);
    if (p->g.engine.turns) generation_log_turns(&p->g);
    metrics_set(m, "beta", c->beta);
    if (nash) metrics_set(m, "rewards/probabilities", w->probability);
    metrics_set(m, "ties", (double)w->ties / w->pairs);
    generation_log(&p->g);
}

static inline void online_close(OnlinePairs *p) {
    online_forget(p);
    if (p->o->reward_model) reward_model_close(&p->judge);
    mixture_free(&p->mixture);
    rollout_free(&p->other);
    free(p->second), free(p->linear), free(p->probability);
    generation_close(&p->g);
}

#endif
