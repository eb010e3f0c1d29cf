/* tasks.h - the completions of a prompt shard: what they are judged with and what is written of them.
 *
 *     t = tasks_new(&ev, &sampling);
 *     tasks_open(&t, &shard);
 *     tasks_open_outputs(&t);
 *     tasks_close(&t);
 */
#ifndef LLMC_EVALUATE_TASKS_H
#define LLMC_EVALUATE_TASKS_H

#include "../base/error.h"           /* die, Error, usage_error, warn, ... */
#include "../base/io.h"              /* writer_abort, writer_open, Writer */
#include "../base/options.h"         /* OptionUse, options_refuse_unused */
#include "../judge/judge.h"          /* Judge, judge_close */
#include "../judge/judged.h"         /* judge_open_rewards */
#include "../model/model_fits.h"     /* FitSide, fit_model */
#include "../records/shard.h"        /* Shard */
#include "../reward/code_judge.h"    /* CODE_USES, CodeJudge, code_judge_close, code_judge_open */
#include "../reward/reward_model.h"  /* RewardModel, REWARD_MODEL_BT, REWARD_MODEL_PRM, reward_model_close */
#include "../reward/rewards.h"       /* Rewards, rewards_close, rewards_models, rewards_open_in, ... */
#include "../rollout/ablation.h"     /* Ablation */
#include "../rollout/episodes.h"     /* Episodes, episodes_code */
#include "../rollout/evaluation.h"   /* Evaluation, evaluation_verifiable */
#include "../rollout/inference.h"    /* inference_need_tokenizer */
#include "../rollout/prompts.h"      /* Prompts, prompts_scorable */
#include "../rollout/prompts_code.h" /* prompts_run, PromptsCode, prompts_code_free, prompts_read_code */
#include "../rollout/role_rewards.h" /* role_rewards_free */
#include "../rollout/rollout.h"      /* Sampling */
#include "../sandbox/sandbox.h"      /* sandbox_name */
#include "../text/tokenizer.h"       /* tokenizer_token */
#include "compute_curve.h"           /* ComputeCurve */
#include "evaluator.h"               /* EvaluateOptions, Evaluator */
#include "figures.h"                 /* TurnTotals */
#include "loss_batch.h"              /* loss_open */
#include "loss_sums.h"               /* LossSums */
#include "loss_work.h"               /* LossWork, loss_abort */
#include "prompt_rows.h"             /* prompt_rows_read, prompt_rows_release */
#include "reward_figures.h"          /* reward_figures_check, reward_figures_open */

typedef struct Tasks {
    Evaluator *ev;
    Prompts prompts;
    Evaluation all;
    Rewards rewards;
    RewardModel judge;
    const Sampling *how;
    bool rewarded; /* by rewards or by the judge */
    CodeJudge code;
    Judge language_judge; /* of the parts `judge` of the rewards */
    Writer out;           /* --completions */
    ComputeCurve curve;   /* --compute-curve */
    LossWork *work;       /* --reference */
    LossSums *loss;
    Ablation *ablation;                      /* --think-ablation */
    const char *search;                      /* --search: the method that is running */
    int32_t budget;                          /* --think-tokens: of this run; 0: none */
    double thoughts, thought_tokens, within; /* completions, tokens of their thoughts, and those within the budget */
    const Episodes *episodes;                /* --tools */
    TurnTotals turns;
    Error error; /* error of the first line that could not be written; see failed */
    bool failed;
} Tasks;

static inline Tasks tasks_new(Evaluator *ev, const Sampling *how) {
    const EvaluateOptions *o = ev->o;
    return (Tasks){.ev = ev,
                   .how = how,
                   .rewarded = o->reward || o->reward_cmd || o->reward_model,
                   .all.samples = (int)o->samples,
                   .out.fd = -1,
                   .curve.rows.fd = -1,
                   .curve.page.fd = -1};
}

/* Positions of the longest sequence, of completions of at most new_max tokens. */
static inline int32_t tasks_longest(const Tasks *t, int64_t new_max) {
    const int64_t context = t->ev->model.model.config.context, most = t->prompts.longest + new_max;
    return (int32_t)(most < context ? most : context);
}

/* Ends the program and removes unfinished files. */
static inline void tasks_fail(Tasks *t, const char *text) {
    writer_abort(&t->out), writer_abort(&t->curve.rows), writer_abort(&t->curve.page);
    if (t->work) loss_abort(t->work);
    die("%s", text);
}

/* Checks what search needs before anything is drawn, and sets the separator. */
static inline void tasks_check_search(Tasks *t) {
    const RewardModel *prm = &t->judge;
    EvaluateOptions *o = t->ev->o;
    const int32_t step = prm->note.step_token;
    if (!o->search.methods) return;
    if (prm->note.kind != REWARD_MODEL_PRM)
        die("--search: %s is %s reward model; the steps of a solution are scored by a process model (train_rm --kind prm)",
            prm->name, prm->note.kind == REWARD_MODEL_BT ? "a Bradley-Terry" : "an outcome");
    inference_need_tokenizer(&t->ev->model);
    if (!o->search.separator) {
        if (step < 0) die("--search: %s does not say what ends a step; give --step-separator", prm->name);
        size_t n;
        const char *text = tokenizer_token(&t->ev->model.text.tokenizer, step, &n);
        o->search.separator = xstrndup(text, n);
    }
    if (!*o->search.separator) usage_error("--step-separator: the text is empty");
}

/* Opens the sandbox if completions are programs, and reads their tests. */
static inline void tasks_open_code(Tasks *t) {
    EvaluateOptions *o = t->ev->o;
    Error e;
    PromptsCode c;
    const bool verifies = prompts_run(&t->prompts, NULL), scores = prompts_run(&t->prompts, &t->rewards);
    const OptionUse use[] = {CODE_USES(o->code, verifies || scores, episodes_code(&o->episodes), o->reward_sandbox,
                                       "used only for prompts of the task code")};
    options_refuse_unused(t->ev->options, use, sizeof use / sizeof *use);
    if (!verifies && !scores) return;
    if (!code_judge_open(&t->code, &o->code, &e) ||
        !prompts_read_code(&t->prompts, scores ? &t->rewards : NULL, &t->code, &c, &e))
        die("%s", e.text);
    t->all.code = t->rewards.code = &t->code.scorer;
    fprintf(stderr, "%lld prompts with %lld tests, %.1f %% of them weak; sandbox %s\n", (long long)c.prompts,
            (long long)c.tests, c.tests ? 100.0 * (double)c.weak / (double)c.tests : 0, sandbox_name(&t->code.sandbox));
    if (c.unusable)
        warn("%s: completions of %lld of %lld prompts cannot be scored: %s", t->prompts.shard.name,
             (long long)c.unusable, (long long)c.prompts, c.why);
    prompts_code_free(&c);
}

static inline void tasks_open(Tasks *t, const Shard *s) {
    EvaluateOptions *o = t->ev->o;
    Error e;
    prompt_rows_read(&t->prompts, s, t->ev->model.model.config.context - 1);
    const bool environment = o->episodes.commands.count > 0; /* may give rewards */
    if (!t->rewarded && !environment && !evaluation_verifiable(&t->prompts))
        die("%s: no prompt has a task and an answer that can be verified; see llmc/reward/verify.h", s->name);
    if (o->reward_model) {
        reward_figures_open(t->ev, &t->judge);
        const FitSide policy = fit_model(t->ev->model.name, &t->ev->model.model.config, &t->ev->model.file);
        reward_figures_check(&t->judge, &policy, tasks_longest(t, o->s.max_new));
        tasks_check_search(t);
        t->all.judge = &t->judge;
    } else if (t->rewarded && !rewards_open_in(&t->rewards, o->reward, o->reward_cmd, o->reward_timeout,
                                               o->reward_sandbox ? &o->code.sandbox : NULL, (uint64_t)o->s.seed,
                                               (int32_t)o->s.max_new, &e))
        usage_error("%s", e.text);
    if (!judge_open_rewards(&t->language_judge, &o->judge, &t->rewards, t->ev->options, t->ev->model.backend,
                            t->ev->model.device, (uint64_t)o->s.seed, &e))
        die("%s", e.text);
    if (o->reward_cmd && !rewards_workers(&t->rewards, (int)o->reward_workers, o->reward_group, &e))
        usage_error("%s", e.text);
    tasks_open_code(t);
    int64_t scorable;
    if (t->rewards.count && !prompts_scorable(&t->prompts, &t->rewards, &scorable, &e)) die("--reward: %s", e.text);
    if (rewards_models(&t->rewards)) usage_error("--reward model: give the reward model as --reward-model");
}

/* Opens the files of --completions, --compute-curve and --report before anything is drawn. */
static inline void tasks_open_outputs(Tasks *t) {
    EvaluateOptions *o = t->ev->o;
    Error e;
    if ((o->completions && !writer_open(&t->out, o->completions, &e)) ||
        (o->compute && !writer_open(&t->curve.rows, o->compute, &e)) ||
        (o->report && o->compute && !writer_open(&t->curve.page, o->report, &e)))
        tasks_fail(t, e.text);
}

/* Opens the reference for samples drawn as `how` says. Estimates need samples of the model's own distribution. */
static inline void tasks_open_comparison(Tasks *t, LossWork *w, LossSums *l, const Sampling *how, int new_max) {
    EvaluateOptions *o = t->ev->o;
    const int32_t longest = tasks_longest(t, new_max);
    loss_open(t->ev, w, l, o->micro_tokens > longest ? (int)o->micro_tokens : longest, longest);
    w->temperature = (float)how->temperature;
    w->sampled = how->top_k == 0 && how->top_p >= 1 && how->min_p <= 0 && how->repetition_penalty == 1;
    t->work = w;
    t->loss = l;
}

static inline void tasks_close(Tasks *t) {
    judge_close(&t->language_judge);
    if (t->ev->o->reward_model) reward_model_close(&t->judge);
    else if (t->rewarded) rewards_close(&t->rewards);
    code_judge_close(&t->code);
    role_rewards_free(&t->turns.roles);
    prompt_rows_release(&t->prompts);
}

#endif
