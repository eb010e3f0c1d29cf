/* prompt_figures.h - accuracies on a prompt shard.
 *
 *     evaluate_prompts(&ev, &shard);
 */
#ifndef LLMC_EVALUATE_PROMPT_FIGURES_H
#define LLMC_EVALUATE_PROMPT_FIGURES_H

#include "../base/clock.h"         /* clock_seconds */
#include "../base/error.h"         /* die, Error, usage_error, warn, ... */
#include "../base/io.h"            /* writer_commit */
#include "../base/random.h"        /* RANDOM_EVAL */
#include "../model/model.h"        /* model_set_longest */
#include "../records/shard.h"      /* Shard */
#include "../rollout/ablation.h"   /* Ablation, ablation_close, ablation_open */
#include "../rollout/certainty.h"  /* Certainty, certainty_close, certainty_open */
#include "../rollout/episodes.h"   /* episodes_on, Episodes, episodes_check_prompts, episodes_close, ... */
#include "../rollout/evaluation.h" /* Outcome, Evaluation, evaluation_summarise */
#include "../rollout/inference.h"  /* Inference, inference_few_threads, inference_need_tokenizer, ... */
#include "../rollout/rollout.h"    /* Sampling, RewardScope, Rollout, rollout_free, ... */
#include "../rollout/thinking.h"   /* THINKING_BUDGETS, Thinking, thinking_close */
#include "../rollout/votes.h"      /* VOTES_CERTAINTY, VotesWeight */
#include "../tools/code_tool.h"    /* CodeToolOptions */
#include "completions.h"           /* tasks_run */
#include "compute_curve.h"         /* curve_samples, curve_write */
#include "evaluator.h"             /* EvaluateOptions, Evaluator, evaluator_count, evaluator_first, ... */
#include "figures.h"               /* figures_json, figures_table, figures_judge, figures_turns */
#include "groups.h"                /* Groups, groups_report */
#include "loss_batch.h"            /* loss_close, loss_run */
#include "loss_sums.h"             /* LossSums */
#include "loss_work.h"             /* LossWork */
#include "reference_figures.h"     /* reference_report */
#include "tasks.h"                 /* Tasks, tasks_close, tasks_fail, tasks_longest, ... */
#include "test_time.h"             /* ablation_report, search_tasks, thinking_open_all, thinking_run */

/* GroupFigures of a Tasks. */
static inline json_t *figures_of_group(const void *tasks, const Groups *g, int group, const char *title) {
    const Tasks *t = (const Tasks *)tasks;
    Evaluation v = {.samples = t->all.samples, .judge = t->all.judge, .vote = t->all.vote};
    Outcome *part = (Outcome *)xmalloc((size_t)g->prompts * sizeof *part);
    json_t *figures = json_object();
    int64_t n = 0;
    for (int64_t i = 0; i < g->prompts; i++)
        if (g->of[i] == group) part[n++] = t->all.outcome[i];
    evaluation_summarise(&v, part, n);
    figures_json(figures, &v, t->rewarded);
    if (title) figures_table(title, &v, t->rewarded);
    free(part);
    return figures;
}

/* The sampling engine, and what it computes of the completions. */
typedef struct PromptEngine {
    Rollout rollout;
    Episodes episodes;
    Thinking thinking[THINKING_BUDGETS];
    int budgets; /* runs of --think-tokens */
    int new_max; /* maximum tokens of a completion */
    Certainty certainty;
    Ablation ablation;
    LossWork work; /* --reference */
    LossSums loss;
} PromptEngine;

/* Opens the sampling engine, with the turns of tools or of thoughts, for `count` prompts. */
static inline void prompt_engine_sampling(PromptEngine *x, Tasks *t, const Sampling *how, int64_t count) {
    Error e;
    Evaluator *ev = t->ev;
    EvaluateOptions *o = ev->o;
    const int32_t context = ev->model.model.config.context;
    const int64_t all = count * (o->samples > 1 ? o->samples : 1);
    const int slots = (int)(all < o->s.slots ? all : o->s.slots);
    inference_few_threads(&ev->model, slots);
    x->new_max = o->s.max_new < context ? (int)o->s.max_new : context;
    x->budgets = thinking_open_all(ev, x->thinking, how, t->prompts.longest, &x->new_max);
    const int64_t drawable = rollout_rows(slots, t->prompts.longest) - slots;
    if (o->samples > drawable)
        usage_error("--num-samples: %lld samples per prompt, at most %lld can be sampled at once with --slots %d",
                    (long long)o->samples, (long long)drawable, slots);
    model_set_longest(&ev->model.model, t->prompts.longest + x->new_max);
    if (!rollout_new(&x->rollout, &ev->model.model, slots, t->prompts.longest, x->new_max, &e)) die("%s", e.text);
    if (!episodes_on(&o->episodes)) return;
    const CodeToolOptions code = {o->code.sandbox, o->code.timeout};
    if (!episodes_open(&x->episodes, &o->episodes, &code, &ev->model.text, slots, "evaluate", o->s.seed, &e))
        die("%s: %s", episodes_option(&o->episodes), e.text);
    if (!episodes_check_prompts(&x->episodes, &t->prompts, &e)) die("%s", e.text);
    x->rollout.turns = &x->episodes.turns;
    t->episodes = &x->episodes;
}

/* Opens what is computed of each completion besides its rewards: its certainty, the ablation, the comparison. */
static inline void prompt_engine_figures(PromptEngine *x, Tasks *t, const Sampling *how) {
    Error e;
    Inference *m = &t->ev->model;
    const EvaluateOptions *o = t->ev->o;
    const int32_t longest = tasks_longest(t, x->new_max);
    t->all.vote = (VotesWeight)o->weight;
    t->all.certainty = &x->certainty;
    if (o->ablation) {
        inference_need_tokenizer(m);
        if (!ablation_open(&x->ablation, &m->model, &m->text, o->think.end, o->search.separator, longest, &e))
            die("%s", e.text);
        t->ablation = &x->ablation;
    }
    if (o->weight == VOTES_CERTAINTY && !certainty_open(&x->certainty, &m->model, longest, &e)) die("%s", e.text);
    if (o->reference) tasks_open_comparison(t, &x->work, &x->loss, how, x->new_max);
}

static inline void prompt_engine_close(PromptEngine *x, const EvaluateOptions *o) {
    if (episodes_on(&o->episodes)) episodes_close(&x->episodes);
    for (int i = 0; i < x->budgets; i++) thinking_close(&x->thinking[i]);
    certainty_close(&x->certainty);
    ablation_close(&x->ablation);
    rollout_free(&x->rollout);
}

/* Reports the accuracies over all prompts, and in groups. */
static inline void prompts_report(Tasks *t, int64_t count) {
    Evaluator *ev = t->ev;
    figures_json(ev->result, &t->all, t->rewarded);
    evaluator_count(ev->result, "samples", ev->o->samples);
    evaluator_count(ev->result, "seed", ev->o->s.seed);
    evaluator_count(ev->result, "dropped", t->prompts.dropped);
    evaluator_number(ev->result, "temperature", ev->o->s.temperature);
    groups_report(ev, &t->prompts, count, true, figures_of_group, t);
    figures_table("all", &t->all, t->rewarded);
    figures_turns(ev, &t->turns);
    if (t->language_judge.open) figures_judge(ev, &t->language_judge);
}

/* Writes the files of --compute-curve, --report and --completions, and ends the comparison. */
static inline void prompts_commit(Tasks *t) {
    Error e;
    const EvaluateOptions *o = t->ev->o;
    char page[600];
    snprintf(page, sizeof page, "%.280s on %.280s", t->ev->model.name, t->prompts.shard.name);
    if ((o->compute && !curve_write(&t->curve, o->report ? page : NULL, &e)) ||
        (o->completions && !writer_commit(&t->out, &e)))
        tasks_fail(t, e.text);
    if (!t->work) return;
    loss_run(t->work, t->loss);
    reference_report(t->work);
    loss_close(t->work, t->loss);
}

/* Draws completions of the prompts of a shard, judges them and reports the figures. */
static inline void evaluate_prompts(Evaluator *ev, const Shard *s) {
    EvaluateOptions *o = ev->o;
    PromptEngine x = {.budgets = 0};
    Sampling how = inference_sampling(&ev->model, &o->s);
    how.scope = (RewardScope)o->scope;
    how.stream = RANDOM_EVAL;
    Tasks t = tasks_new(ev, &how);
    if (o->samples && how.temperature == 0)
        usage_error("--temperature 0: greedy samples are identical; give --num-samples 0");
    if (t.rewarded && !o->samples)
        usage_error("--reward%s: with --num-samples 0 there are no samples to choose from",
                    o->reward_model ? "-model" : "");
    if (!s->count) die("%s: the shard is empty", s->name);
    tasks_open(&t, s);
    if (ev->model.text.stop < 0 && !how.stops)
        warn("the model has no tokenizer: completions end only at --max-new-tokens");
    const int64_t count = evaluator_first(ev, t.prompts.count);
    prompt_engine_sampling(&x, &t, &how, count);
    prompt_engine_figures(&x, &t, &how);
    tasks_open_outputs(&t);

    Outcome *outcome = (Outcome *)xcalloc((size_t)count, sizeof *outcome);
    const double start = clock_seconds();
    if (x.budgets) thinking_run(&t, &x.rollout, x.thinking, &how, x.budgets, outcome, count, start);
    else tasks_run(&t, &x.rollout, &how, outcome, count, start);
    const double seconds = clock_seconds() - start;
    prompts_report(&t, count);
    t.ablation = NULL;
    if (o->ablation) ablation_report(ev, &x.ablation);
    if (o->compute && !x.budgets) curve_samples(&t.curve, &t.all, t.rewarded, &ev->model.model.config, outcome, count);
    if (o->search.methods) search_tasks(&t, &how, count, x.new_max);
    prompts_commit(&t);
    fprintf(stderr, "%lld tokens in %.2f s, %.0f tok/s\n", (long long)x.rollout.tokens, seconds,
            (double)x.rollout.tokens / seconds);
    free(outcome);
    prompt_engine_close(&x, o);
    tasks_close(&t);
}

#endif
