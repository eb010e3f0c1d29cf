/* scoring.h - scores of completions that a program writes: whether they are right, their reward and its parts.
 *
 *     static struct { ScoringOptions r; } o;
 *     static const Option options[] = {SCORING_OPTIONS(o.r), OPTION_END};
 *     Scoring s;
 *     Inference x;
 *     Sampling how;
 *     PromptText what;
 *     RolloutRequest q;
 *     Score scores[64];                                                                     // (q.samples)
 *     if (!scoring_open(&s, &o.r, &x, seed, longest, max_new, NULL, &e)) usage_error("%s", e.text);
 *     if (!scoring_run(&s, &x.text, &how, &what, &q, scores, &e)) die("%s", e.text);
 *     scoring_close(&s);
 *
 * `right` is the check of the record's task (reward/verify.h), as `evaluate` reports it. `reward` is that of --reward and
 * --reward-cmd (reward/rewards.h), or the score of --reward-model. What could not be scored is NaN.
 */
#ifndef LLMC_ROLLOUT_SCORING_H
#define LLMC_ROLLOUT_SCORING_H

#include "../base/error.h"           /* xcalloc, Error, error_set */
#include "../base/options.h"         /* OPTION_TEXT, OPTION_CHOICE, OPTION_FLAG, OPTION_GROUP, ... */
#include "../model/model_fits.h"     /* FitSide, fit_model */
#include "../model/model_text.h"     /* ModelText */
#include "../reward/code_judge.h"    /* CodeOptions, CodeJudge, code_judge_close, code_judge_open */
#include "../reward/reward_model.h"  /* RewardItem, PRM_AGGREGATION_CHOICES, PRM_MIN, PrmAggregation, ... */
#include "../reward/rewards.h"       /* rewards_close, REWARDS_MAX, Rewards, rewards_models, ... */
#include "../reward/verify.h"        /* VERIFY_CODE, verify_kind */
#include "../reward/verify_answer.h" /* RewardInput */
#include "../sandbox/sandbox.h"      /* SandboxOptions */
#include "evaluation.h"              /* evaluation_check_all */
#include "inference.h"               /* Inference */
#include "prompts.h"                 /* PromptText, prompt_text_input, prompts_said */
#include "rollout.h"                 /* Completion, RolloutRequest, Sampling */
#include "trajectory.h"              /* trajectory_lost */

typedef struct ScoringOptions {
    bool reward_sandbox;
    const char *reward, *reward_cmd, *reward_model;
    double reward_timeout;
    int64_t reward_workers;
    bool reward_group;
    int scope;       /* a RewardScope */
    int aggregation; /* a PrmAggregation */
    CodeOptions code;
} ScoringOptions;

// clang-format off
#define SCORING_OPTIONS(o)                                                                                             \
    OPTION_GROUP("Rewards"),                                                                                           \
    OPTION_TEXT("reward",            0, &(o).reward,         "SPEC",                                                   \
                "score the completions by weighted rewards, such as verify:1,format=hash:0.1"),                        \
    OPTION_TEXT("reward-cmd",        0, &(o).reward_cmd,     "PROGRAM",                                                \
                "reward program: reads one JSON line per completion, prints one number per line"),                     \
    OPTION_REAL("reward-timeout",    0, &(o).reward_timeout, 0.01, 1e6,                                                \
                "seconds that --reward-cmd may take for the samples of one prompt"),                                   \
    OPTION_INT ("reward-workers",    0, &(o).reward_workers, 1, 256, "copies of --reward-cmd that run at once"),       \
    OPTION_FLAG("reward-sandbox",    0, &(o).reward_sandbox,                                                           \
                "run reward programs in the sandbox: they read this folder, write to /tmp alone, and have no network"),       \
    OPTION_FLAG("reward-group",      0, &(o).reward_group,                                                             \
                "give --reward-cmd all completions to a prompt as one line; it prints a list of numbers"),             \
    OPTION_CHOICE("reward-scope",    0, &(o).scope,          "last|all",                                               \
                "what rewards read of a completion of several turns: the last turn, or what the model wrote in all"),  \
    OPTION_TEXT("reward-model",      0, &(o).reward_model,   "FILE", "score the completions by this reward model"),    \
    OPTION_CHOICE("prm-aggregation", 0, &(o).aggregation,    PRM_AGGREGATION_CHOICES,                                  \
                "how a process reward model combines the step probabilities of a completion")
// clang-format on

enum { SCORING_ROWS = 4096 }; /* tokens that a reward model scores at once */

typedef struct Scoring {
    bool on, by_model; /* completions are scored; by a reward model */
    Rewards rewards;
    RewardModel model;
    CodeOptions programs; /* how completions that are programs run */
    CodeJudge code;       /* open once there is a prompt of which they are */
} Scoring;

/* The scores of a completion; NaN: it could not be scored. */
typedef struct Score {
    double right;
    float reward, parts[REWARDS_MAX]; /* parts: those of --reward */
} Score;

static inline bool scoring_asked(const ScoringOptions *o) { return o->reward || o->reward_cmd || o->reward_model; }

static inline void scoring_close(Scoring *s) {
    if (s->by_model) reward_model_close(&s->model);
    else if (s->on) rewards_close(&s->rewards);
    code_judge_close(&s->code);
    *s = (Scoring){0};
}

/* Opens what scores the completions of the policy x, of up to max_new tokens, to prompts of up to `longest` tokens. Without
 * any of the options nothing is scored: s->on is false. note: what to warn of if a reward model is opened; may be NULL. */
static inline bool scoring_open(Scoring *s, const ScoringOptions *o, const Inference *x, uint64_t seed, int32_t longest,
                                int32_t max_new, Error *note, Error *e) {
    *s = (Scoring){.on = scoring_asked(o), .by_model = o->reward_model != NULL, .programs = o->code};
    if (!s->on) return true;
    if (!s->by_model) {
        const SandboxOptions *box = o->reward_sandbox ? &o->code.sandbox : NULL;
        bool ok = rewards_open_in(&s->rewards, o->reward, o->reward_cmd, o->reward_timeout, box, seed, max_new, e);
        if (ok && o->reward_cmd && !rewards_workers(&s->rewards, (int)o->reward_workers, o->reward_group, e)) {
            rewards_close(&s->rewards);
            ok = false;
        }
        if (ok && !rewards_models(&s->rewards)) return true;
        if (ok) rewards_close(&s->rewards);
        s->on = false;
        return ok ? error_set(e, "--reward model: give the reward model as --reward-model") : false;
    }
    s->on = s->by_model = reward_model_open(&s->model, o->reward_model, x->backend, x->device, SCORING_ROWS, e);
    if (!s->on) return false;
    const int32_t context = x->model.config.context, most = longest + max_new < context ? longest + max_new : context;
    const FitSide policy = fit_model(x->name, &x->model.config, &x->file);
    s->model.aggregation = (PrmAggregation)o->aggregation;
    bool ok = o->aggregation == PRM_MIN || s->model.note.kind == REWARD_MODEL_PRM ||
              error_set(e, "--prm-aggregation: %s is not a process reward model", s->model.name);
    ok = ok && reward_model_fits(&s->model, &policy, most, note, e);
    if (!ok) scoring_close(s);
    return ok;
}

/* Whether completions to a prompt can be scored; opens the sandbox if they are programs. Fails if its task is unknown, and if
 * there is no sandbox. */
static inline bool scoring_possible(Scoring *s, const PromptText *what, bool *possible, Error *e) {
    const RewardInput in = {
        .prompt = what->text, .completion = "", .task = what->task, .answer = what->answer, .fields = what->fields};
    const bool program = verify_kind(what->task) == VERIFY_CODE || rewards_run(&s->rewards, what->task);
    *possible = true;
    if (program && !s->code.open) {
        if (!code_judge_open(&s->code, &s->programs, e)) return false;
        s->rewards.code = &s->code.scorer;
    }
    return s->by_model || rewards_scorable(&s->rewards, &in, possible, e);
}

/* A completion that a tool has lost has no score. */
static inline void scoring_none(Score *score, int parts) {
    score->right = score->reward = NAN;
    for (int k = 0; k < parts; k++) score->parts[k] = NAN;
}

/* Scores the completions of a request. score: (request.samples). */
static inline bool scoring_run(Scoring *s, const ModelText *text, const Sampling *how, const PromptText *what,
                               const RolloutRequest *q, Score *score, Error *e) {
    const int n = q->samples, parts = s->rewards.count;
    char **said = (char **)xcalloc((size_t)n, sizeof *said);
    RewardInput *in = (RewardInput *)xcalloc((size_t)n, sizeof *in);
    RewardItem *item = (RewardItem *)xcalloc((size_t)n, sizeof *item);
    float *total = (float *)xcalloc((size_t)n, sizeof *total),
          *part = (float *)xcalloc((size_t)n * (size_t)(parts + 1), sizeof *part);
    for (int i = 0; i < n; i++) {
        const Completion *c = &q->out[i];
        size_t length;
        said[i] = prompts_said(how, text, c, &length);
        in[i] = prompt_text_input(what, said[i], length, c);
        in[i].id = q->id + (uint64_t)i;
        in[i].max_tokens = how->max_new;
        in[i].prompt_ids = q->prompt;
        in[i].prompt_tokens = q->prompt_len;
        item[i] = (RewardItem){q->prompt, c->tokens, q->prompt_len, c->count};
    }
    double *right = (double *)xcalloc((size_t)n, sizeof *right);
    bool ok = s->by_model ? reward_model_score(&s->model, item, n, total, e)
                          : rewards_score(&s->rewards, in, n, part, total, e);
    ok = ok && evaluation_check_all(in, n, s->code.open ? &s->code.scorer : NULL, right, e);
    for (int i = 0; i < n; i++) {
        if (ok) {
            score[i].right = right[i];
            score[i].reward = total[i];
            memcpy(score[i].parts, part + (size_t)i * (size_t)parts, (size_t)parts * sizeof *part);
            if (trajectory_lost(q->out[i].trajectory)) scoring_none(&score[i], parts);
        }
        free(said[i]);
    }
    free(said), free(in), free(item), free(total), free(part), free(right);
    return ok;
}

#endif
