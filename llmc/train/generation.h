/* generation.h - sampling, scoring and logging shared by the trainers that learn from their own completions.
 *
 * A generation is P prompts with G completions each, sampled from the model in training and scored. The completions of
 * a prompt are adjacent and form a group. The tokens that the model drew are stored flat, one completion after another:
 * completion i has the range [offset[i], offset[i+1]) of every per-token array. Tokens that it observed
 * (../rollout/trajectory.h) are rows of context in the batches and have no place in these arrays, so they are in no loss,
 * normaliser or metric. The completions of a group share one copy of their prompt,
 * in sampling and in training; micro-batches are split between completions. Code that works on a micro-batch receives
 * only its range, as a GenerationSlice whose offsets begin at 0.
 *
 * On several ranks (dist.h) each group is sampled, scored and trained on by a single rank. For sampling, prompts are
 * distributed over the ranks by their length. Once the lengths of the completions are known, the groups of each
 * mini-batch are distributed again for all that follows. After generation_sample(), generation_score() and
 * generation_forward() every rank holds every completion and its per-token values (all-gather), so advantages,
 * normalisers and metrics are computed locally and agree. Only the backward pass is limited to the rank's own
 * completions, generation_mine().
 *
 * The activations of sampling can serve as the forward pass of the training passes that follow, until the weights change:
 * generation_plan_cache().
 *
 * Owns: the prompt shards, the order of the prompts, the sampling engine, the verifiers, the completions and their
 * arrays. The trainer owns the model, its workspace and the metrics. Errors end the program (see trainer.h). In the
 * order of use:
 *
 *     Generation g;
 *     generation_open_data(&g, &options, &trainer, seed, true);          // rewards and training shard
 *     trainer_open(&trainer, "train_grpo", &trainer_options, &g.train.shard, false);
 *     generation_open_prompts(&g, 1);
 *     trainer_announce(&trainer, table, g.rows, (int)options.slots, generation_bytes(&g));
 *     generation_open(&g);
 *     for (...) {
 *         generation_sample(&g, 0, P);
 *         generation_score(&g, 0, P);                                    // r_i = sum_k w_k R_k(x, y_i)
 *         generation_flatten(&g, false);                                 // random order of the groups, flat arrays
 *         generation_forward(&g, &model, &work, 0, g.completions, &out);     // log-probabilities of all tokens
 *         const MicroPlan *plan = generation_plan(&g, 0, g.completions);
 *         for (int32_t m = 0; m < plan->micros; m++) {
 *             const GenerationSlice x = generation_pack(&g, plan->first[m], plan->first[m + 1]);
 *             model_forward(&model, &work, &g.batch, 1.0f, &(ModelOutput){.logp = x.logp});
 *             model_backward(&model, &work, &g.batch, 1.0f, x.dlogp, NULL, NULL);
 *         }
 *         generation_log(&g);                                            // generation_report.h
 *         generation_forget(&g, 0);
 *         generation_save(&g);
 *     }
 *     generation_close(&g);
 */
#ifndef LLMC_TRAIN_GENERATION_H
#define LLMC_TRAIN_GENERATION_H

#include "../base/error.h"           /* xcalloc, die, Error, usage_error, ... */
#include "../base/options.h"         /* options_parsed, OptionUse, option_given, options_refuse_unused */
#include "../base/random.h"          /* RANDOM_ROLLOUT, RANDOM_SHUFFLE, Random, random_below, ... */
#include "../dist/dist.h"            /* Dist, dist_collect, dist_share, dist_complete */
#include "../judge/judge.h"          /* Judge, judge_close, judge_mode_name, judge_open */
#include "../judge/judge_options.h"  /* JudgeMode, judge_given, JUDGE_MODES, JudgeOptions, ... */
#include "../judge/judged.h"         /* judge_attach, judge_cost */
#include "../judge/local.h"          /* JudgeLocal */
#include "../model/acts_cache.h"     /* activation_cache_bytes, ActivationCache, activation_cache_free, ... */
#include "../model/backend.h"        /* Backend */
#include "../model/batch.h"          /* Batch */
#include "../model/config.h"         /* ModelConfig */
#include "../model/micro_plan.h"     /* MicroPlan, BatchSize, micro_plan_add, micro_plan_begin, ... */
#include "../model/model.h"          /* Model */
#include "../model/model_fits.h"     /* FitSide */
#include "../model/pack.h"           /* batch_branch, batch_clear, batch_completion, batch_free, ... */
#include "../model/transformer.h"    /* ModelOutput, model_flops, model_forward, model_forward_backward */
#include "../model/workspace.h"      /* Workspace */
#include "../records/eval_sets.h"    /* EvalSets, eval_sets_free, eval_sets_new, eval_sets_size */
#include "../records/inputs.h"       /* Inputs, inputs_close */
#include "../records/mix.h"          /* Mix, mix_free, mix_next, mix_records, ... */
#include "../reward/code_judge.h"    /* CODE_USES, CodeJudge, CodeOptions, code_judge_close, ... */
#include "../reward/reward_model.h"  /* RewardModel, RewardItem, reward_model_close, reward_model_fits, ... */
#include "../reward/rewards.h"       /* Rewards, REWARD_MODEL, REWARDS_MAX, rewards_close, ... */
#include "../reward/verify_answer.h" /* RewardInput */
#include "../rollout/episodes.h"     /* episodes_on, episodes_check_prompts, Episodes, episodes_close, ... */
#include "../rollout/off_policy.h"   /* Demonstrations, demonstrations_completion, demonstrations_free, ... */
#include "../rollout/prompts.h"      /* prompts_length, Prompts, prompts_close, prompts_said, ... */
#include "../rollout/prompts_code.h" /* prompts_run, PromptsCode, prompts_code_free, prompts_read_code */
#include "../rollout/rollout.h"      /* Completion, RolloutRequest, Sampling, completion_drawn, ... */
#include "../rollout/trajectory.h"   /* Trajectory, trajectory_words, trajectory_branch_end, ... */
#include "../sandbox/sandbox.h"      /* sandbox_name */
#include "../tools/code_tool.h"      /* CodeToolOptions */
#include "generation_options.h"      /* GenerationOptions, generation_sandbox */
#include "mixing.h"                  /* mixing_begin, mixing_check_limit, mixing_inputs, mixing_open */
#include "trainer.h"                 /* Trainer, trainer_file, trainer_count_flops, trainer_open_files, ... */
#include <unistd.h>

/* One completion with its prompt and its rewards. */
typedef struct ScoredCompletion {
    Completion completion;
    char *text;
    size_t text_length; /* bytes, among which there may be NULs */
    int64_t prompt;     /* index of the prompt */
    uint64_t id;
    bool off_policy;         /* a demonstration, which the policy did not draw */
    int64_t prompt_row, row; /* 1 + the first row of its prompt and its own in the activation cache; 0: not in it */
    float reward, parts[REWARDS_MAX];
} ScoredCompletion;

typedef struct Generation {
    const GenerationOptions *o; /* the command line */
    Trainer *t;
    Prompts train, val;
    Rewards rewards;      /* empty if the trainer scores in another way */
    CodeJudge code;       /* runs completions that are programs; not open: there are none */
    RewardModel *models;  /* (rewards.count) those of the parts that are reward models */
    RewardModel *judge;   /* scores held-out completions; NULL: there is no reward model */
    Judge language_judge; /* --judge; scores the parts `judge` of the rewards */
    Rollout engine;
    Episodes episodes; /* the tools of --tools; its turns are the engine's */
    Sampling sampling;
    Batch batch;           /* a micro-batch of completions */
    int rows;              /* its capacity */
    ActivationCache cache; /* of the policy at the step cache_step; no memory: there is none */
    int64_t cache_rows;    /* its capacity; 0: there is none */
    int64_t cache_step;
    int32_t *cache_row;      /* (rows) those of the batch */
    Inputs files;            /* of --input and --mix */
    EvalSets held;           /* those of the held-out prompts, which have their order */
    Mix mixture;             /* order of the training prompts */
    const uint8_t *left_out; /* (train.count) 1: a prompt that is never sampled; NULL: all are */
    Demonstrations given;    /* demonstrations of the training prompts, which replace samples */
    int64_t steps;           /* of the run: --max-steps, or the optimizer steps that --num-train-epochs takes */
    uint64_t next_id;        /* id of the next completion to be sampled */
    /* completions: P groups of G adjacent ones */
    int32_t completions;
    ScoredCompletion *scored;
    float *reward;       /* (completions) */
    uint8_t *counts;     /* (completions) 0: left out of the loss */
    uint8_t *off_policy; /* (completions) 1: a demonstration */
    int32_t *offset;     /* (completions + 1) */
    float *logp, *old_logp, *ref_logp, *sampler_logp, *entropy, *dlogp, *dentropy; /* (tokens) */
    bool observe;          /* batches have room for the observed tokens as targets: generation_observe() */
    unsigned told;         /* bits of the warnings that were printed */
    MicroPlan plan;        /* the result of generation_plan() */
    int32_t *slice_offset; /* (completions + 1) offsets of the last slice */
    double gen_seconds, reward_seconds;
    /* ranks */
    int32_t parts;  /* mini-batches of a generation, each distributed over the ranks; 1 unless set */
    int64_t *cut;   /* (parts, ranks + 1) rank r has completions cut[r] ... cut[r+1]-1 of a part */
    int32_t *owner; /* (groups) the rank that samples it */
    double *cost;   /* (groups) tokens */
} Generation;

/* Completions first ... first+count-1 of a generation. */
typedef struct GenerationSlice {
    int32_t first, count;
    int32_t at;                /* index of its first token in the arrays of the whole generation */
    const int32_t *offset;     /* (count + 1) as in the generation, but from 0; valid until the next slice is made */
    const uint8_t *counts;     /* (count) */
    const uint8_t *off_policy; /* (count) */
    float *logp, *old_logp, *ref_logp, *sampler_logp, *entropy, *dlogp, *dentropy; /* (tokens of the slice) */
} GenerationSlice;

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* Opens the training shard and, if `verify`, the rewards of --reward and --reward-cmd. */
static inline void generation_open_data(Generation *g, const GenerationOptions *o, Trainer *t, uint64_t seed,
                                        bool verify) {
    Error e;
    *g = (Generation){.o = o, .t = t, .parts = 1};
    const bool none = o->reward && !strcmp(o->reward, "none");
    if (verify && none && ((!o->episodes.commands.count && !o->agent.command) || o->reward_cmd))
        usage_error("--reward none: used only with rewards of --tool-cmd or --agent-cmd alone");
    if (verify && !none &&
        !rewards_open_in(&g->rewards, o->reward, o->reward_cmd, o->reward_timeout, generation_sandbox(o), seed,
                         (int32_t)o->max_completion, &e))
        usage_error("%s", e.text);
    const unsigned modes = rewards_judge_modes(&g->rewards);
    if (modes && !judge_given(&o->judge))
        usage_error("--reward judge: give the judge, as --judge FILE or --judge-url URL");
    if (!o->judges_pairs) judge_refuse_unused(&o->judge, *options_parsed(), modes, "used only with --reward judge=...");
    if (o->reward_cmd && !rewards_workers(&g->rewards, (int)o->reward_workers, o->reward_group, &e))
        usage_error("%s", e.text);
    g->files = mixing_inputs(&o->mix, &o->input);
    trainer_open_files(&g->train.shard, &g->files, false);
}

static inline int generation_longest_prompt(const Generation *g) {
    return g->train.longest > g->val.longest ? g->train.longest : g->val.longest;
}

/* Positions of the longest prompt with its completion. */
static inline int32_t generation_longest(const Generation *g) {
    const int64_t most = generation_longest_prompt(g) + g->o->max_completion;
    const int32_t context = g->t->model.config.context;
    return most < context ? (int32_t)most : context;
}

/* Maximum tokens of a sequence of --agent-cmd. */
static inline int32_t generation_agent_length(const Generation *g) {
    const int32_t context = g->t->model.config.context;
    return g->o->max_completion < context ? (int32_t)g->o->max_completion : context;
}

/* Reads the tests of the prompts whose completions are programs. */
static inline void generation_read_code(Generation *g, const Prompts *p, const Rewards *r) {
    Error e;
    PromptsCode c;
    if (!prompts_run(p, r)) return;
    if (!prompts_read_code(p, r, &g->code, &c, &e)) die("%s", e.text);
    if (g->t->dist.rank == 0 && !g->t->o->quiet)
        fprintf(stderr, "code    %s: %lld prompts, %lld tests, %.1f %% of them weak; sandbox %s, %lld workers\n",
                p->shard.name, (long long)c.prompts, (long long)c.tests,
                c.tests ? 100.0 * (double)c.weak / (double)c.tests : 0, sandbox_name(&g->code.sandbox),
                (long long)g->code.sandbox.o.workers);
    if (g->t->dist.rank == 0 && c.unusable)
        warn("%s: completions of %lld of %lld prompts cannot be scored: %s", p->shard.name, (long long)c.unusable,
             (long long)c.prompts, c.why);
    prompts_code_free(&c);
}

/* Opens the sandbox if completions are programs that `r` runs, or that the evaluation verifies. Ends the program if it
 * cannot, and if options of the sandbox are given without need. */
static inline void generation_open_code(Generation *g, Rewards *r) {
    Error e;
    const CodeOptions *o = &g->o->code;
    const bool scores = r->count && prompts_run(&g->train, r), verifies = g->o->val.count && prompts_run(&g->val, NULL);
    const OptionUse use[] = {CODE_USES(*o, scores || verifies || g->code.open, episodes_code(&g->o->episodes),
                                       g->o->reward_sandbox, "used only for prompts of the task code")};
    options_refuse_unused(*options_parsed(), use, sizeof use / sizeof *use);
    if (!scores && !verifies) return;
    if (!g->code.open && !code_judge_open(&g->code, o, &e)) die("%s", e.text);
    r->code = &g->code.scorer;
    if (scores) generation_read_code(g, &g->train, r);
    if (g->o->val.count) generation_read_code(g, &g->val, NULL);
}

/* Ends the program if no completion could be scored, and warns if some could not. */
static inline void generation_check_rewards(const Generation *g) {
    Error e;
    int64_t scorable;
    if (!g->rewards.count) return;
    if (!prompts_scorable(&g->train, &g->rewards, &scorable, &e))
        die("%s; give --reward-cmd, another --reward or a reward model, or answers in the shard", e.text);
    if (scorable < g->train.count && g->t->dist.rank == 0)
        warn("%s: completions of %lld of %lld prompts cannot be scored: they have no answer that the reward can check",
             g->train.shard.name, (long long)(g->train.count - scorable), (long long)g->train.count);
}

/* Makes the mixture of the training prompts and sets the length of the run. Ends the program if the files' maximum numbers
 * of epochs do not allow the generations of --max-steps. steps: optimizer steps of a generation. */
static inline void generation_open_mixture(Generation *g, int64_t steps) {
    const int64_t P = g->o->prompts, all = g->t->o->steps;
    int64_t *count = (int64_t *)xcalloc((size_t)g->files.count, sizeof *count);
    for (int64_t i = 0; i < g->train.count; i++) count[g->train.what[i].file]++;
    g->mixture = mixing_open(g->t, &g->o->mix, &g->files, count);
    free(count);
    mixing_check_limit(&g->mixture, (all + steps - 1) / steps <= g->mixture.limit / P);
    g->steps = all ? all : (int64_t)ceil(mix_records(&g->mixture, g->o->epochs) / (double)P) * steps;
}

/* Reads prompts of at most `limit` tokens. Ends the program if more than half of them are longer. */
static inline void generation_read_prompts(Prompts *p, int32_t limit) {
    Error e;
    if (!prompts_read(p, limit, &e)) die("%s", e.text);
    if (2 * p->dropped > p->shard.count)
        die("%s: %lld of %lld prompts are longer than %d tokens, up to %d; raise --max-prompt-length", p->shard.name,
            (long long)p->dropped, (long long)p->shard.count, limit, p->too_long);
    if (p->dropped)
        warn("%s: %lld of %lld prompts are longer than %d tokens, up to %d, and are left out", p->shard.name,
             (long long)p->dropped, (long long)p->shard.count, limit, p->too_long);
}

/* Reads the held-out prompts, set by set. */
static inline void generation_open_held(Generation *g, int32_t limit) {
    Inputs files = trainer_inputs("-j/--val", &g->o->val, true);
    trainer_open_files(&g->val.shard, &files, false);
    trainer_check_shard(g->t, &g->val.shard);
    generation_read_prompts(&g->val, limit);
    int *file = (int *)xcalloc((size_t)g->val.count, sizeof *file);
    for (int64_t i = 0; i < g->val.count; i++) file[i] = g->val.what[i].file;
    g->held = eval_sets_new(&files, file, g->val.count, g->t->o->max_eval_samples);
    prompts_select(&g->val, g->held.record, eval_sets_size(&g->held));
    free(file);
    inputs_close(&files);
}

/* Reads the prompts of both shards, and sets the size of a micro-batch and the length of the run. steps: optimizer steps
 * of a generation. Call it after trainer_open(). */
static inline void generation_open_prompts(Generation *g, int64_t steps) {
    Error e;
    const GenerationOptions *o = g->o;
    const int32_t context = g->t->model.config.context;
    const int32_t limit = o->max_prompt < context - 1 ? (int32_t)o->max_prompt : context - 1;
    generation_read_prompts(&g->train, limit);
    if (o->val.count) generation_open_held(g, limit);
    generation_open_code(g, &g->rewards);
    generation_check_rewards(g);
    generation_open_mixture(g, steps);
    const CodeToolOptions code = {o->code.sandbox, o->code.timeout};
    if (episodes_on(&o->episodes) &&
        !episodes_open(&g->episodes, &o->episodes, &code, &g->t->text, (int)o->slots, g->t->program, g->t->o->seed, &e))
        die("%s: %s", episodes_option(&o->episodes), e.text);
    if (episodes_on(&o->episodes) &&
        (!episodes_check_prompts(&g->episodes, &g->train, &e) || !episodes_check_prompts(&g->episodes, &g->val, &e)))
        die("%s", e.text);
    if (o->episodes.timeout > 0)
        warn(
            "--rollout-timeout: completions depend on the clock, so that a run that is resumed or repeated can differ");
    if (g->t->text.stop < 0) warn("the model has no tokenizer: completions end at --max-completion-length only");
    const int need = generation_longest_prompt(g) + (int)o->max_completion;
    trainer_set_longest(g->t, generation_longest(g));
    g->rows = g->t->o->micro_tokens > need ? (int)g->t->o->micro_tokens : need;
}

/* Opens a reward model that scores the generation's completions, and checks that it fits the policy. option: that names
 * it. Call it after generation_open_prompts(). */
static inline void generation_open_reward_model(Generation *g, RewardModel *m, const char *option, const char *path) {
    Error e, note = {0};
    Trainer *t = g->t;
    const FitSide policy = trainer_side(t);
    if (!reward_model_open(m, path, t->backend, t->device, (int)t->o->micro_tokens, &e) ||
        !reward_model_fits(m, &policy, generation_longest(g), &note, &e))
        die("%s", e.text);
    if (note.text[0] && t->dist.rank == 0) warn("%s", note.text);
    trainer_file(t, option, path, m->file.hash);
}

/* The callback of rewards.h: the scores of part k's model. */
static inline bool generation_score_model(void *generation, int k, const RewardInput *in, int n, float *scores,
                                          int stride, Error *e) {
    Generation *g = (Generation *)generation;
    RewardModel *m = &g->models[k];
    RewardItem *item = (RewardItem *)xcalloc((size_t)n + 1, sizeof *item);
    float *score = (float *)xcalloc((size_t)n + 1, sizeof *score);
    const int64_t before = m->rows;
    for (int i = 0; i < n; i++)
        item[i] = (RewardItem){.prompt = in[i].prompt_ids,
                               .prompt_len = in[i].prompt_tokens,
                               .completion = in[i].ids,
                               .completion_len = in[i].tokens};
    const bool ok = reward_model_score(m, item, n, score, e);
    for (int i = 0; ok && i < n; i++) scores[i * stride] = score[i];
    g->t->flops += model_flops(&m->model.config, (double)(m->rows - before), 0, 0, 1);
    free(item), free(score);
    return ok;
}

/* Prints what the judge costs. G: completions of a prompt that it compares. */
static inline void generation_say_judge(const Generation *g, int64_t G) {
    const Judge *j = &g->language_judge;
    for (int m = 0; m < JUDGE_MODES && g->t->dist.rank == 0 && !g->t->o->quiet; m++) {
        const int64_t cost = judge_cost(j, (JudgeMode)m, G);
        if (!j->form[m].used) continue;
        fprintf(stderr, "judge   %s: ", judge_mode_name((JudgeMode)m));
        if (cost)
            fprintf(stderr, "%lld questions per prompt, %lld per generation\n", (long long)cost,
                    (long long)(cost * g->o->prompts));
        else
            fprintf(stderr, "%s for each criterion of the rubric and each of %lld completions\n",
                    j->o->injection ? "3 questions" : "a question", (long long)G);
    }
}

/* Opens the judge of --judge, if it is given. */
static inline void generation_open_judge(Generation *g) {
    Error e;
    Trainer *t = g->t;
    Judge *j = &g->language_judge;
    const JudgeOptions *o = &g->o->judge;
    if (!judge_given(o)) return;
    if (!judge_open(j, o, t->backend, t->device, (uint64_t)t->o->seed, &e) || !judge_attach(j, &g->rewards, &e))
        die("%s", e.text);
    if (o->file) trainer_file(t, "judge", o->file, j->local.file.hash);
    if (j->hash) trainer_file(t, "judge-template", o->template ? o->template : o->principles, j->hash);
    generation_say_judge(g, g->o->generations);
}

/* Opens the reward models among the parts of --reward. path: of --reward-model, or NULL. Call it after
 * generation_open_prompts(). */
static inline void generation_open_models(Generation *g, const char *path) {
    Rewards *r = &g->rewards;
    generation_open_judge(g);
    if (!rewards_models(r)) return;
    g->models = (RewardModel *)xcalloc((size_t)r->count, sizeof *g->models);
    r->score_model = generation_score_model;
    r->context = g;
    for (int k = 0; k < r->count; k++) {
        if (r->part[k].kind != REWARD_MODEL) continue;
        const char *file = r->part[k].path ? r->part[k].path : path;
        if (!file) usage_error("--reward model: give its file, as in model=rm.bin");
        generation_open_reward_model(g, &g->models[k], r->part[k].path ? r->name[k] : "reward-model", file);
    }
}

/* Decides whether there is an activation cache (../model/acts_cache.h). There is one on one rank of a CPU, for completions of
 * one turn, if a generation fits into --activation-cache and, without that option, into a quarter of the machine's memory.
 * used: the trainer runs the policy by credit_forward() and credit_backward(). Ends the program if the option is given and has
 * no effect. Call it before trainer_announce(). */
static inline void generation_plan_cache(Generation *g, bool used) {
    const GenerationOptions *o = g->o;
    const Trainer *t = g->t;
    const char *why = NULL;
    if (t->backend->stream) why = "on a CPU";
    else if (t->dist.ranks > 1) why = "on one rank";
    else if (o->agent.command || episodes_on(&o->episodes)) why = "for completions of one turn";
    else if (!used) why = "without a teacher and without --kl-estimator exact";
    const bool given = option_given(&o->activation_cache);
    if (why && o->activation_cache && given) usage_error("--activation-cache: used only %s", why);
    if (why || !o->activation_cache) return;
    const int64_t rows = o->prompts * rollout_activation_rows(generation_longest_prompt(g), (int32_t)o->generations,
                                                              (int)o->max_completion);
    const size_t bytes = activation_cache_bytes(&t->model.config, t->backend, (int)t->o->recompute, rows);
    const size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    const bool fits = rows <= INT32_MAX && bytes <= (size_t)o->activation_cache << 20;
    if (fits && (given || bytes <= machine / 4)) g->cache_rows = rows;
    else if (given)
        usage_error("--activation-cache %lld: the activations of a generation take up to %zu MiB",
                    (long long)o->activation_cache, (bytes >> 20) + 1);
}

/* Size of the sampling engine in bytes, for trainer_announce(). */
static inline size_t generation_bytes(const Generation *g) {
    const ModelConfig *c = &g->t->model.config;
    const Backend *b = g->t->backend;
    const int slots = (int)g->o->slots, prompt = generation_longest_prompt(g);
    if (g->o->agent.command) return rollout_bytes(c, b, slots, generation_agent_length(g) - 1, 1);
    const size_t engine = rollout_bytes(c, b, slots, prompt, (int)g->o->max_completion);
    if (!g->cache_rows) return engine;
    return engine + rollout_caching_bytes(c, b, slots, prompt) +
           activation_cache_bytes(c, b, (int)g->t->o->recompute, g->cache_rows);
}

static inline float **generation_token_arrays(Generation *g, int i) {
    float **const arrays[] = {&g->logp,    &g->old_logp, &g->ref_logp, &g->sampler_logp,
                              &g->entropy, &g->dlogp,    &g->dentropy};
    return i < (int)(sizeof arrays / sizeof *arrays) ? arrays[i] : NULL;
}

/* The maximum number of tokens of a generation. */
static inline size_t generation_tokens_max(const Generation *g) {
    return (size_t)(g->o->prompts * g->o->generations) * (size_t)g->o->max_completion;
}

/* Checks that the samples of a prompt fit into the engine. option: that has their number. */
static inline void generation_check_samples(const Generation *g, const char *option, int64_t samples) {
    const int slots = (int)g->o->slots, most = rollout_rows(slots, generation_longest_prompt(g)) - slots;
    if (g->episodes.turns.together && samples > slots)
        die("--%s: the %lld completions of a prompt may wait for one another (\"group\": true of --tool-cmd); give "
            "--slots %lld or more",
            option, (long long)samples, (long long)samples);
    if (samples > most)
        die("--%s: %lld completions of one prompt, at most %d can be sampled at once", option, (long long)samples,
            most);
}

/* Checks that a group of completions fits into the engine. Call it before trainer_announce(), to fail early. */
static inline void generation_check_group(const Generation *g) {
    if (g->o->agent.command) return; /* each has a prompt of its own */
    generation_check_samples(g, "num-generations", g->o->generations);
    generation_check_samples(g, "eval-samples", g->o->eval_samples);
}

/* How completions are sampled. Call it after trainer_open(). */
static inline Sampling generation_sampling(const Generation *g) {
    Error e;
    const GenerationOptions *o = g->o;
    Sampling s = {.temperature = (float)o->temperature,
                  .top_p = (float)o->top_p,
                  .min_p = (float)o->min_p,
                  .top_k = (int)o->top_k,
                  .repetition_penalty = (float)o->repetition_penalty,
                  .max_new = (int)o->max_completion,
                  .seed = (uint64_t)g->t->o->seed,
                  .stream = RANDOM_ROLLOUT,
                  .scope = (RewardScope)o->reward_scope};
    if (!sampling_add_stops(&s, &g->t->text.ends, &e)) die("%s", e.text);
    if (!sampling_add_words(&s, &g->t->text, &o->stop, &e)) usage_error("--stop: %s", e.text);
    return s;
}

/* Allocates the engine, unless completions come from --agent-cmd, and the arrays, and continues from the counters of the
 * trainer's state. */
static inline void generation_open(Generation *g) {
    Error e;
    const GenerationOptions *o = g->o;
    const json_t *s = g->t->state;
    const size_t n = (size_t)(o->prompts * o->generations), tokens = generation_tokens_max(g);
    if (!o->agent.command && !rollout_new_with(&g->engine, &g->t->model, (int)o->slots, generation_longest_prompt(g),
                                               (int)o->max_completion, g->cache_rows > 0, &e))
        die("%s; lower --slots", e.text);
    if (g->cache_rows && !activation_cache_new(&g->cache, &g->t->model, (int)g->t->o->recompute, g->cache_rows, &e))
        die("%s; lower --activation-cache", e.text);
    g->cache_row = (int32_t *)xcalloc((size_t)g->rows, sizeof *g->cache_row);
    g->engine.flops = &g->t->flops;
    if (episodes_on(&o->episodes)) g->engine.turns = &g->episodes.turns;
    g->batch = batch_new(g->rows, g->rows, g->rows);
    g->scored = (ScoredCompletion *)xcalloc(n, sizeof *g->scored);
    g->reward = (float *)xcalloc(n, sizeof(float));
    g->counts = (uint8_t *)xcalloc(n, 1);
    g->off_policy = (uint8_t *)xcalloc(n, 1);
    g->offset = (int32_t *)xcalloc(n + 1, sizeof(int32_t));
    g->slice_offset = (int32_t *)xcalloc(n + 1, sizeof(int32_t));
    for (int i = 0; generation_token_arrays(g, i); i++)
        *generation_token_arrays(g, i) = (float *)xcalloc(tokens, sizeof(float));
    g->sampling = generation_sampling(g);
    g->cut = (int64_t *)xcalloc((size_t)g->parts * (size_t)(g->t->dist.ranks + 1), sizeof *g->cut);
    g->owner = (int32_t *)xcalloc((size_t)o->prompts, sizeof *g->owner);
    g->cost = (double *)xcalloc((size_t)o->prompts, sizeof *g->cost);
    mixing_begin(&g->mixture, g->t);
    g->next_id = (uint64_t)state_int(s, "next_id");
}

/* Stores the counters in the trainer's state. */
static inline void generation_save(Generation *g) {
    mix_save(&g->mixture, g->t->state);
    json_object_set_new(g->t->state, "next_id", json_integer((json_int_t)g->next_id));
}

/* Frees the completions from `first` on. */
static inline void generation_forget(Generation *g, int32_t first) {
    for (int32_t i = first; i < g->completions; i++) {
        completion_free(&g->scored[i].completion);
        free(g->scored[i].text);
        g->scored[i] = (ScoredCompletion){0};
    }
}

static inline void generation_close(Generation *g) {
    generation_forget(g, 0);
    for (int i = 0; generation_token_arrays(g, i); i++) free(*generation_token_arrays(g, i));
    free(g->scored), free(g->reward), free(g->counts), free(g->offset), free(g->slice_offset);
    free(g->off_policy);
    demonstrations_free(&g->given);
    micro_plan_free(&g->plan);
    free(g->cut), free(g->owner), free(g->cost);
    mix_free(&g->mixture);
    inputs_close(&g->files);
    for (int k = 0; g->models && k < g->rewards.count; k++)
        if (g->rewards.part[k].kind == REWARD_MODEL) reward_model_close(&g->models[k]);
    free(g->models);
    judge_close(&g->language_judge);
    rewards_close(&g->rewards);
    if (g->engine.turns) episodes_close(&g->episodes);
    code_judge_close(&g->code);
    rollout_free(&g->engine);
    if (g->cache_rows) activation_cache_free(&g->cache, &g->t->model);
    free(g->cache_row);
    batch_free(&g->batch);
    prompts_close(&g->train);
    if (g->o->val.count) prompts_close(&g->val);
    eval_sets_free(&g->held);
}

/* ---- sampling and scoring -------------------------------------------------------------------------------------- */

/* The number of 32-bit words that generation_spread() sends of a completion. */
static inline int64_t generation_words(const Completion *c) {
    return 3 + 2 * (int64_t)c->count + (c->trajectory ? trajectory_words(c->trajectory, c->count) : 0);
}

/* All-gather of the completions of n groups: sends those of this rank's groups and receives the others. Collective. */
static inline void generation_spread(Generation *g, ScoredCompletion *scored, const int32_t *owner, int32_t n) {
    Dist *d = &g->t->dist;
    const int32_t G = (int32_t)g->o->generations;
    if (d->ranks == 1) return;
    int64_t at = 0, first[d->ranks + 1], words = 0;
    for (int32_t i = 0; i < n * G; i++)
        if (owner[i / G] == d->rank) words += generation_words(&scored[i].completion);
    int32_t *mine = (int32_t *)xmalloc(((size_t)words + 1) * sizeof *mine);
    for (int32_t i = 0; i < n * G; i++) { /* count, finished, words of the trajectory, tokens, log-probabilities */
        const Completion *c = &scored[i].completion;
        if (owner[i / G] != d->rank) continue;
        mine[at++] = c->count;
        mine[at++] = c->finished;
        mine[at++] = c->trajectory ? (int32_t)trajectory_words(c->trajectory, c->count) : 0;
        memcpy(mine + at, c->tokens, (size_t)c->count * sizeof *mine);
        at += c->count;
        memcpy(mine + at, c->logp, (size_t)c->count * sizeof *mine);
        at += c->count;
        if (c->trajectory) at += trajectory_pack(c->trajectory, c->count, mine + at);
    }
    int32_t *all = (int32_t *)dist_collect(d, mine, at, sizeof *mine, first);
    for (int32_t i = 0; i < n * G; i++) {
        Completion *c = &scored[i].completion;
        int64_t *next = &first[owner[i / G]];
        const int32_t *x = all + *next;
        const size_t bytes = (size_t)x[0] * sizeof *x;
        *next += 3 + 2 * (int64_t)x[0] + x[2];
        if (owner[i / G] == d->rank) continue;
        *c = (Completion){(int32_t *)xmalloc(bytes), (float *)xmalloc(bytes), x[0], x[1] != 0, NULL};
        memcpy(c->tokens, x + 3, bytes);
        memcpy(c->logp, x + 3 + x[0], bytes);
        if (x[2]) c->trajectory = trajectory_unpack(x + 3 + 2 * x[0], c->tokens, c->count);
    }
    free(all), free(mine);
}

/* The number of tokens of the data's prompt before a completion: 0 with --agent-cmd, whose branches begin with prompts of their
 * own. */
static inline int32_t generation_prompt_length(const Generation *g, const ScoredCompletion *s) {
    return g->o->agent.command ? 0 : prompts_length(&g->train, s->prompt);
}

/* The next training prompt in the mixture's order that is not left out. A file with a small share may be drawn from long after
 * the others. */
static inline int64_t generation_next_prompt(Generation *g) {
    const int64_t most = 2 * g->train.count + (1 << 20);
    for (int64_t passed = 0; passed <= most; passed++) {
        const int64_t prompt = mix_next(&g->mixture);
        if (!g->left_out || !g->left_out[prompt]) return prompt;
    }
    die("%s: every prompt that the mixture draws is left out", g->train.shard.name);
}

/* The number of completions of a group that are sampled; its demonstrations are the others. */
static inline int32_t generation_samples(const Generation *g, int64_t prompt) {
    return (int32_t)g->o->generations - demonstrations_of(&g->given, prompt);
}

/* The number of tokens that the model drew in a completion, whether or not they are in the loss. */
static inline int32_t generation_length(const Completion *c) {
    return completion_drawn(c) + (c->trajectory ? c->trajectory->masked : 0);
}

/* The number of tokens that the policy drew in this generation, and of the completions that they are in. */
static inline int64_t generation_drawn(const Generation *g, int32_t *completions) {
    int64_t tokens = 0;
    *completions = 0;
    for (int32_t i = 0; i < g->completions; i++) {
        if (g->scored[i].off_policy) continue;
        tokens += generation_length(&g->scored[i].completion);
        ++*completions;
    }
    return tokens;
}

/* Gives groups first ... first+n-1, which the requests q sample, rows of the activation cache: those of its parts, one for each
 * group of a generation, that no group before them has. */
static inline void generation_cache(Generation *g, RolloutRequest *q, int32_t first, int32_t n) {
    const int32_t G = (int32_t)g->o->generations;
    const int most = (int)g->o->max_completion;
    if (!g->cache_rows) return;
    const int64_t part = g->cache_rows / g->o->prompts;
    uint8_t *taken = (uint8_t *)xcalloc((size_t)g->o->prompts, 1);
    for (int32_t i = 0; i < first; i++) taken[(g->scored[i * G].prompt_row - 1) / part] = 1;
    for (int32_t i = 0, at = 0; i < n; i++, at++) {
        ScoredCompletion *s = g->scored + (first + i) * G;
        while (taken[at]) at++;
        q[i].activations = at * part + 1;
        for (int32_t k = 0; k < q[i].samples; k++) {
            s[k].prompt_row = q[i].activations;
            s[k].row = q[i].activations + rollout_activation_rows(q[i].prompt_len, k, most);
        }
    }
    free(taken);
    g->cache_step = g->t->step;
    rollout_cache(&g->engine, &g->cache);
}

/* Fills groups of G completions, first ... first+n-1, with samples of the next n prompts, followed by the prompt's
 * demonstrations. Their tokens count as processed (num_tokens; TRL counts them at the same place, grpo_trainer.py).
 * Collective. */
static inline void generation_sample(Generation *g, int32_t first, int32_t n) {
    Error e;
    const int32_t G = (int32_t)g->o->generations;
    int32_t *owner = g->owner + first, own = 0;
    ScoredCompletion *scored = g->scored + first * G;
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)n, sizeof *q);
    Completion *out = (Completion *)xcalloc((size_t)n * (size_t)G, sizeof *out);
    for (int32_t i = 0; i < n; i++) {
        const int64_t prompt = generation_next_prompt(g);
        for (int32_t k = 0; k < G; k++)
            scored[i * G + k] = (ScoredCompletion){
                .prompt = prompt, .id = g->next_id++, .off_policy = k >= generation_samples(g, prompt)};
        g->cost[first + i] = prompts_length(&g->train, prompt) + (double)G * (double)g->o->max_completion;
    }
    dist_share(g->cost + first, n, g->t->dist.ranks, owner);
    for (int32_t i = 0; i < n; i++) {
        const int64_t prompt = scored[i * G].prompt;
        const int32_t samples = generation_samples(g, prompt);
        if (owner[i] != g->t->dist.rank) continue;
        q[own++] = prompts_request(&g->train, prompt, samples, scored[i * G].id, out + i * G);
        for (int32_t k = samples; k < G; k++)
            out[i * G + k] = demonstrations_completion(&g->given, prompt, k - samples);
    }
    generation_cache(g, q, first, n);
    if (!rollout_run(&g->engine, &g->sampling, q, own, NULL, NULL, &e)) die("%s: %s", g->train.shard.name, e.text);
    if (g->cache_rows) rollout_cache(&g->engine, NULL);
    for (int32_t i = 0; i < n * G; i++) scored[i].completion = out[i];
    generation_spread(g, scored, owner, n);
    for (int32_t i = 0; i < n * G; i++)
        g->t->tokens += generation_prompt_length(g, &scored[i]) + scored[i].completion.count;
    g->completions = (first + n) * G;
    free(q), free(out);
}

/* Decodes completions [0, count) and computes their rewards, which are 0 if there are no verifiers. If a reward program
 * fails on any rank, the run ends with the state of the last step. Collective. */
static inline void generation_score_completions(Generation *g, ScoredCompletion *scored, int32_t count) {
    Error e = {""};
    const size_t K = (size_t)g->rewards.count;
    RewardInput *in = (RewardInput *)xcalloc((size_t)count, sizeof *in);
    float *parts = (float *)xcalloc((size_t)count * (K + 1), sizeof *parts), *total = parts + (size_t)count * K;
    for (int32_t i = 0, first = 0; i < count; i++) { /* first: of its group, which has the completions of one draw */
        const Completion *c = &scored[i].completion;
        if (scored[i].prompt != scored[first].prompt || i - first == g->o->generations) first = i;
        scored[i].text = prompts_said(&g->sampling, &g->t->text, c, &scored[i].text_length);
        in[i] = prompts_input(&g->train, scored[i].prompt, scored[i].text, scored[i].text_length, c, scored[i].id,
                              (int32_t)g->o->max_completion);
        in[i].group = first;
    }
    const JudgeLocal *judge = &g->language_judge.local;
    const int64_t judged = judge->rows;
    trainer_require(g->t, !K || rewards_score(&g->rewards, in, count, parts, total, &e), &e);
    if (judge->rows > judged) g->t->flops += model_flops(&judge->model.config, (double)(judge->rows - judged), 0, 0, 1);
    for (int32_t i = 0; i < count; i++) {
        const Trajectory *y = scored[i].completion.trajectory;
        const bool alone = y && !K && (g->episodes.programs.count || g->o->agent.command) && !g->judge;
        scored[i].reward = trajectory_reward(y, alone ? NAN : total[i]);
        if (y && y->counts.parse_errors)
            scored[i].reward -= (float)(g->o->episodes.parse_penalty * y->counts.parse_errors);
        memcpy(scored[i].parts, parts + (size_t)i * K, K * sizeof *parts);
    }
    free(in), free(parts);
}

/* Scores groups first ... first+n-1, each on the rank that sampled it, followed by an all-gather. Collective. */
static inline void generation_score(Generation *g, int32_t first, int32_t n) {
    Dist *d = &g->t->dist;
    const int32_t G = (int32_t)g->o->generations;
    const size_t K = (size_t)g->rewards.count;
    ScoredCompletion *scored = g->scored + first * G,
                     *mine = (ScoredCompletion *)xcalloc((size_t)(n * G), sizeof *mine);
    const int32_t *owner = g->owner + first;
    float *scores = (float *)xcalloc((size_t)(n * G) * (K + 1), sizeof *scores);
    int32_t own = 0;
    for (int32_t i = 0; i < n * G; i++)
        if (owner[i / G] == d->rank) mine[own++] = scored[i];
    generation_score_completions(g, mine, own);
    for (int32_t i = 0; i < own; i++) {
        scores[(size_t)i * (K + 1)] = mine[i].reward;
        memcpy(scores + (size_t)i * (K + 1) + 1, mine[i].parts, K * sizeof *scores);
    }
    int64_t next[d->ranks + 1];
    float *all = (float *)dist_collect(d, scores, own, (K + 1) * sizeof *scores, next);
    for (int32_t i = 0, k = 0; i < n * G; i++) {
        const float *x = all + (size_t)next[owner[i / G]]++ * (K + 1);
        const Completion *c = &scored[i].completion;
        scored[i].reward = x[0];
        memcpy(scored[i].parts, x + 1, K * sizeof *x);
        if (owner[i / G] == d->rank) {
            scored[i].text = mine[k].text;
            scored[i].text_length = mine[k++].text_length;
        } else {
            scored[i].text = prompts_said(&g->sampling, &g->t->text, c, &scored[i].text_length);
        }
    }
    free(all), free(mine), free(scores);
}

/* The reward of completion i without that of its turns: the parts of --reward, what the environment gave at the end, and
 * --parse-error-penalty. 0 if there is none of them. */
static inline float generation_outcome(const Generation *g, int32_t i) {
    const ScoredCompletion *s = &g->scored[i];
    const Trajectory *y = s->completion.trajectory;
    double sum = y && !isnan(y->end_reward) ? (double)y->end_reward : 0;
    for (int k = 0; k < g->rewards.count; k++)
        if (!isnan(s->parts[k])) sum += g->rewards.weight[k] * (double)s->parts[k];
    return (float)(sum - (y ? g->o->episodes.parse_penalty * y->counts.parse_errors : 0));
}

static inline void generation_swap_groups(Generation *g, int32_t a, int32_t b) {
    const int32_t G = (int32_t)g->o->generations;
    for (int32_t k = 0; k < G; k++) {
        const ScoredCompletion held = g->scored[a * G + k];
        g->scored[a * G + k] = g->scored[b * G + k];
        g->scored[b * G + k] = held;
    }
}

/* The number of tokens of a group in training. */
static inline double generation_group_tokens(const Generation *g, int32_t group) {
    const int32_t G = (int32_t)g->o->generations;
    double tokens = generation_prompt_length(g, &g->scored[group * G]);
    for (int32_t k = 0; k < G; k++) tokens += g->scored[group * G + k].completion.count;
    return tokens;
}

/* Distributes the n groups of a part, from `first` on, over the ranks by their tokens, and sorts them by rank. */
static inline void generation_arrange(Generation *g, int32_t first, int32_t n, int64_t *cut) {
    const int ranks = g->t->dist.ranks;
    const int32_t G = (int32_t)g->o->generations;
    int32_t at = first;
    for (int32_t i = 0; i < n; i++) g->cost[i] = generation_group_tokens(g, first + i);
    dist_share(g->cost, n, ranks, g->owner);
    for (int r = 0; r < ranks; r++) {
        cut[r] = (int64_t)at * G;
        for (int32_t i = at; i < first + n; i++) {
            if (g->owner[i - first] != r) continue;
            for (int32_t k = i; k > at; k--) { /* the others keep their order */
                generation_swap_groups(g, k, k - 1);
                const int32_t held = g->owner[k - first];
                g->owner[k - first] = g->owner[k - 1 - first];
                g->owner[k - 1 - first] = held;
            }
            at++;
        }
    }
    cut[ranks] = (int64_t)at * G;
}

/* Shuffles the groups, distributes each mini-batch over the ranks and fills in the flat arrays. mask_truncated:
 * truncated completions do not count in the loss. */
static inline void generation_flatten(Generation *g, bool mask_truncated) {
    const int32_t G = (int32_t)g->o->generations, P = g->completions / G;
    Random random = random_start((uint64_t)g->t->o->seed, RANDOM_SHUFFLE + (1ull << 48) + (uint64_t)g->t->step);
    for (int32_t i = P - 1; i > 0; i--) generation_swap_groups(g, i, (int32_t)random_below(&random, (uint64_t)i + 1));
    for (int32_t part = 0, n = P / g->parts; part < g->parts; part++)
        generation_arrange(g, part * n, n, g->cut + part * (g->t->dist.ranks + 1));
    g->offset[0] = 0;
    for (int32_t i = 0; i < g->completions; i++) {
        const Completion *c = &g->scored[i].completion;
        const bool left =
            !c->trajectory || !g->o->episodes.mask_errors || trajectory_mask_errors(c->trajectory, c->tokens, c->count);
        if (c->trajectory && g->o->episodes.unmasked) trajectory_unmask(c->trajectory, c->tokens, c->logp, c->count);
        g->offset[i + 1] = g->offset[i] + completion_drawn(c);
        g->counts[i] = c->finished || !mask_truncated;
        g->off_policy[i] = g->scored[i].off_policy;
        if (c->trajectory && !episodes_count_in_loss(&g->episodes, c->trajectory)) g->counts[i] = 0;
        if (!left || g->offset[i + 1] == g->offset[i]) g->counts[i] = 0;
        g->reward[i] = g->scored[i].reward;
        const uint8_t *drawn = completion_mask(c);
        for (int32_t k = 0, at = g->offset[i]; k < c->count; k++)
            if (!drawn || drawn[k]) g->sampler_logp[at++] = c->logp[k];
    }
}

/* ---- micro-batches --------------------------------------------------------------------------------------------- */

/* Divides completions [first, end) into micro-batches. Those of a group that are in one micro-batch share one copy of
 * their prompt. */
static inline const MicroPlan *generation_plan(Generation *g, int32_t first, int32_t end) {
    micro_plan_begin(&g->plan, &g->batch, first);
    for (int32_t i = first; i < end; i++) {
        const Completion *c = &g->scored[i].completion;
        const Trajectory *y = c->trajectory;
        if (g->o->agent.command) {
            micro_plan_add(&g->plan, (BatchSize){c->count - y->branches, y->drawn_count, y->branches});
            continue;
        }
        BatchSize size = {c->count - 1, g->observe ? c->count : completion_drawn(c), 2};
        if (i % g->o->generations == 0 || !micro_plan_fits(&g->plan, size))
            size.rows += prompts_length(&g->train, g->scored[i].prompt);
        micro_plan_add(&g->plan, size);
    }
    return &g->plan;
}

static inline GenerationSlice generation_slice(Generation *g, int32_t first, int32_t end) {
    const int32_t at = g->offset[first];
    for (int32_t i = first; i <= end; i++) g->slice_offset[i - first] = g->offset[i] - at;
    return (GenerationSlice){.first = first,
                             .count = end - first,
                             .at = at,
                             .offset = g->slice_offset,
                             .counts = g->counts + first,
                             .off_policy = g->off_policy + first,
                             .logp = g->logp + at,
                             .old_logp = g->old_logp + at,
                             .ref_logp = g->ref_logp + at,
                             .sampler_logp = g->sampler_logp + at,
                             .entropy = g->entropy + at,
                             .dlogp = g->dlogp + at,
                             .dentropy = g->dentropy + at};
}

/* Adds completions [first, end) to a batch, after their prompts: prompt i is at tokens[offset[i]] ... [offset[i + 1]], without
 * the tokens that its completions begin with. Branches are sequences of their own. */
static inline void generation_fill(const Generation *g, Batch *b, int32_t first, int32_t end, const int32_t *tokens,
                                   const int64_t *offset) {
    int segment = -1;
    for (int32_t i = first; i < end; i++) {
        const ScoredCompletion *a = &g->scored[i];
        const Completion *c = &a->completion;
        const Trajectory *y = c->trajectory;
        if (g->o->agent.command) {
            for (int32_t k = 0; k < y->branches; k++) {
                const int32_t from = y->branch[k];
                batch_branch(b, c->tokens + from, y->drawn + from, trajectory_branch_end(y, k, c->count) - from);
            }
            continue;
        }
        const int64_t at = offset[a->prompt], length = offset[a->prompt + 1] - at - prompts_held(&g->train, a->prompt);
        if (i == first || i % g->o->generations == 0) segment = batch_segment(b, tokens + at, (int32_t)length, 0, -1);
        batch_completion(b, segment, c->tokens, completion_mask(c), c->count);
    }
}

/* Packs completions [first, end), a micro-batch of generation_plan(), into the batch and returns their slice. */
static inline GenerationSlice generation_pack(Generation *g, int32_t first, int32_t end) {
    batch_clear(&g->batch);
    generation_fill(g, &g->batch, first, end, g->train.tokens, g->train.offset);
    return generation_slice(g, first, end);
}

/* Adds the tokens that completions [first, end), which generation_pack() has packed, observed after their first turn to the
 * batch's targets, in order after the drawn ones. */
static inline void generation_observe(Generation *g, int32_t first, int32_t end) {
    Batch *b = &g->batch;
    int segment = 0;
    for (int32_t i = first; i < end; i++) {
        const Completion *c = &g->scored[i].completion;
        const uint8_t *drawn = completion_mask(c);
        segment += i == first || i % g->o->generations == 0; /* the prompt's */
        const int32_t before = completion_before(c);
        for (int32_t k = before ? before : 1; drawn && k < c->count; k++)
            if (!drawn[k]) batch_target(b, b->segment[segment].start + k - 1, c->tokens[k]);
        segment += c->count > 1;
    }
}

/* Whether the activation cache has what a training pass of `m` over completions [first, end) would compute. */
static inline bool generation_cached(const Generation *g, const Model *m, int32_t first, int32_t end) {
    if (!g->cache_rows || m != g->engine.model || g->t->step != g->cache_step) return false;
    for (int32_t i = first; i < end; i++)
        if (!g->scored[i].row) return false;
    return true;
}

/* Workspace w for a training pass over completions [first, end), which are in the activation cache and which
 * generation_pack() has packed. */
static inline Workspace generation_cached_work(Generation *g, const Workspace *w, int32_t first, int32_t end) {
    int32_t n = 0;
    for (int32_t i = first; i < end; i++) {
        const ScoredCompletion *s = &g->scored[i];
        const int32_t prompt = i == first || i % g->o->generations == 0 ? prompts_length(&g->train, s->prompt) : 0;
        for (int32_t k = 0; k < prompt; k++) g->cache_row[n++] = (int32_t)s->prompt_row - 1 + k;
        for (int32_t k = 0; k < s->completion.count - 1; k++) g->cache_row[n++] = (int32_t)s->row - 1 + k;
    }
    assert(n == g->batch.rows);
    return activation_cache_work(w, &g->cache, g->cache_row);
}

/* The forward and the backward pass over a slice of cached completions in one, with one pass over the head. Its gradient dlogp
 * follows from the sampler's log-probabilities. Writes entropy, for the metrics. */
static inline void generation_forward_backward(Generation *g, const GenerationSlice *x, const Model *m,
                                               const Workspace *w) {
    const Workspace cached = generation_cached_work(g, w, x->first, x->first + x->count);
    model_forward_backward(m, &cached, &g->batch, (float)g->o->temperature, x->dlogp,
                           &(ModelOutput){.entropy = x->entropy});
}

/* The arithmetic of one pass over the head for the targets of the batch. */
static inline double generation_head_flops(const Generation *g, const Model *m) {
    return model_flops(&m->config, 0, g->batch.targets, 0, 1);
}

/* Counts the arithmetic of a step on the micro-batch of completions [first, end). */
static inline void generation_count_step(Generation *g, const Model *m, int32_t first, int32_t end) {
    const bool cached = generation_cached(g, m, first, end);
    trainer_count_flops(g->t, m, &g->batch, cached ? 2 : 3);
    if (cached) g->t->flops += generation_head_flops(g, m);
}

/* This rank's completions among [first, end), which must be within one part: [*mine, *last). */
static inline void generation_mine(const Generation *g, int32_t first, int32_t end, int32_t *mine, int32_t *last) {
    const int64_t *cut = g->cut + first / (g->completions / g->parts) * (g->t->dist.ranks + 1) + g->t->dist.rank;
    *mine = cut[0] > first ? (int32_t)cut[0] : first;
    *last = cut[1] < end ? (int32_t)cut[1] : end;
    if (*last < *mine) *last = *mine;
}

/* All-gather of the per-token values of completions [first, end) of a part, 4 bytes each; each rank has filled in those
 * of its own completions. Collective. */
static inline void generation_complete(Generation *g, void *array, int32_t first, int32_t end) {
    const int ranks = g->t->dist.ranks;
    const int64_t *cut = g->cut + first / (g->completions / g->parts) * (ranks + 1);
    int64_t at[ranks + 1];
    for (int r = 0; r <= ranks; r++) {
        const int64_t i = cut[r] < first ? first : cut[r] > end ? end : cut[r];
        at[r] = g->offset[i];
    }
    if (array) dist_complete(&g->t->dist, array, at, 4);
}

/* Runs a model over completions [first, end), which generation_pack() has packed. Those of the activation cache have the
 * sampler's log-probabilities. */
static inline void generation_run(Generation *g, const Model *m, const Workspace *w, int32_t first, int32_t end,
                                  const ModelOutput *out) {
    const size_t tokens = (size_t)(g->offset[end] - g->offset[first]);
    if (!generation_cached(g, m, first, end)) {
        model_forward(m, w, &g->batch, (float)g->o->temperature, out);
        trainer_count_flops(g->t, m, &g->batch, 1);
        return;
    }
    const Workspace cached = generation_cached_work(g, w, first, end);
    ModelOutput rest = *out;
    if (!out->log_square) rest.logp = NULL; /* which is computed from it */
    const int heads = (rest.logp || rest.entropy || rest.argmax) + (rest.log_square != NULL);
    if (heads || rest.value) model_forward(m, &cached, &g->batch, (float)g->o->temperature, &rest);
    if (out->logp) memcpy(out->logp, g->sampler_logp + g->offset[first], tokens * sizeof *out->logp);
    g->t->flops += heads * generation_head_flops(g, m);
}

/* Computes the outputs requested in `out` for all tokens of completions [first, end) under a model. The arrays of `out`
 * are flat, of the whole generation. Each rank computes its own completions, followed by an all-gather. Collective. */
static inline void generation_forward(Generation *g, const Model *m, const Workspace *w, int32_t first, int32_t end,
                                      const ModelOutput *out) {
    const int32_t size = g->completions / g->parts;
    for (int32_t part = first, mine, last; part < end; part = (part / size + 1) * size) {
        const int32_t part_end = (part / size + 1) * size < end ? (part / size + 1) * size : end;
        generation_mine(g, part, part_end, &mine, &last);
        const MicroPlan *plan = generation_plan(g, mine, last);
        for (int32_t i = 0; i < plan->micros; i++) {
            const int32_t at = generation_pack(g, plan->first[i], plan->first[i + 1]).at;
            const ModelOutput some = {.logp = out->logp ? out->logp + at : NULL,
                                      .entropy = out->entropy ? out->entropy + at : NULL,
                                      .argmax = out->argmax ? out->argmax + at : NULL,
                                      .value = out->value ? out->value + at : NULL,
                                      .log_square = out->log_square ? out->log_square + at : NULL};
            generation_run(g, m, w, plan->first[i], plan->first[i + 1], &some);
        }
        generation_complete(g, out->logp, part, part_end);
        generation_complete(g, out->entropy, part, part_end);
        generation_complete(g, out->argmax, part, part_end);
        generation_complete(g, out->value, part, part_end);
        generation_complete(g, out->log_square, part, part_end);
    }
}

/* With --state-masking false: the observed tokens, of which the sampler knows no log-probability, get old_logp, which must be
 * that of the policy before the first update. */
static inline void generation_observed_logps(Generation *g) {
    for (int32_t t = 0; g->o->episodes.unmasked && t < g->offset[g->completions]; t++)
        if (isnan(g->sampler_logp[t])) g->sampler_logp[t] = g->old_logp[t];
}

#endif
