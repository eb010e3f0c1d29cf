/* train_ppo.c - reinforcement learning from a reward: PPO as used in RLHF, and related algorithms.
 *
 * One generation:
 *   1. sample and score   G completions y_i for each of P prompts from the policy; s_i: a reward model, verifiers, any
 *                         program, or their sum                                      (generation.h, reward_model.h)
 *   2. old policy         log pi_old, log ref, the critic's values, prime's process rewards; before the first update
 *   3. token rewards      r_t = -beta k(log pi_old / log ref) + s_i at the last token         (gae.h, kl_control.h)
 *   4. advantages         A_t: from the critic's values or from a baseline, depending on --algo             (gae.h)
 *   5. update             policy and critic, in several epochs of mini-batches                         (loss/ppo.h)
 *
 *   --algo                critic   A_t                                    passes   baseline
 *   ppo                   yes      GAE, whitened                          4        V
 *   a2c                   yes      GAE with lambda 1                      1        V
 *   reinforce             -        return to go                           1        mean of the others' returns, or none
 *   rloo                  -        return of the completion               1        mean of the others in its group
 *   remax                 -        return to go                           1        score of the greedy completion
 *   reinforce++           -        return to go, whitened                 1        mean of the batch
 *   reinforce++-baseline  -        return to go, whitened                 1        mean of its group
 *   a2po                  -        r - V, a regression's target           1        V from samples of the reference
 *   prime                 -        process and outcome, whitened          1        means of the group
 *
 * All of them but a2po and prime have the same optimum, pi = ref exp(s / beta) / Z, and differ only in step 4. a2po also has a
 * loss of its own, and estimates V before the first step (loss/a2po.h). prime has no KL penalty, and adds the returns of
 * process rewards, which it takes from a second language model that learns from the scores (loss/implicit_prm.h). The score is
 * the reward of the completion's last token, which is the stop token if the completion is finished; no value or reward follows
 * it.
 *
 *     ./train_ppo -c sft.bin --reward-model rm.bin -i prompts.shard -o ppo.bin --kl-coef 0.05 --report ppo.html
 */
#include "llmc/base/clock.h"               /* clock_seconds */
#include "llmc/base/error.h"               /* usage_error, xcalloc, Error, die, ... */
#include "llmc/base/options.h"             /* OPTION_REAL, OPTION_CHOICE, OPTION_TEXT, OPTION_INT, ... */
#include "llmc/base/program.h"             /* program_start */
#include "llmc/dist/dist.h"                /* dist_sum, DIST_FIELDS, dist_total, dist_complete, ... */
#include "llmc/dist/grads.h"               /* dist_grads_begin */
#include "llmc/judge/judge_options.h"      /* JUDGE_BY_GROUP, JUDGE_BY_PAIR, JUDGE_OPTIONS */
#include "llmc/loss/a2po.h"                /* A2poStats, A2poBatch, a2po_loss, a2po_value */
#include "llmc/loss/advantage.h"           /* spread_of, AdvantageStats, Spread, advantage_rloo */
#include "llmc/loss/aggregation.h"         /* LossNormaliser, AGG_SEQ_MEAN_TOKEN_MEAN, AGG_TOKEN_MEAN, ... */
#include "llmc/loss/clip_histogram.h"      /* clip_histogram_policy */
#include "llmc/loss/gae.h"                 /* whiten, mean_baseline, moments_of, explained_variance, ... */
#include "llmc/loss/kl.h"                  /* KL_CHOICES, KL_K1, KlEstimator, KL_K3 */
#include "llmc/loss/kl_control.h"          /* KL_ADAPTIVE, KlControl, KL_CONTROL_CHOICES, KlControlKind, ... */
#include "llmc/loss/policy.h"              /* PolicyNormaliser, POLICY_RLOO, PolicyLossConfig, ... */
#include "llmc/loss/positive_nll.h"        /* PositiveNll, PositiveBatch, positive_nll_add, positive_nll_begin */
#include "llmc/loss/ppo.h"                 /* PpoStats, PpoConfig, PpoBatch, ppo_config, ... */
#include "llmc/loss/scalar.h"              /* clamp */
#include "llmc/model/batch.h"              /* Batch, batch_pairs */
#include "llmc/model/micro_plan.h"         /* MicroPlan */
#include "llmc/model/transformer.h"        /* ModelOutput, model_flops, model_backward, model_forward */
#include "llmc/model/workspace.h"          /* Workspace, workspace_free */
#include "llmc/report/metrics.h"           /* metrics_set, metrics_phase, metrics_warn, Metrics, ... */
#include "llmc/report/overoptimisation.h"  /* GaoFit, gao_reward, overoptimisation_fit */
#include "llmc/report/run_facts.h"         /* RUN_SAMPLING, RunPhase, RUN_REWARD */
#include "llmc/reward/reward_model.h"      /* RewardItem, RewardModel, reward_model_close, reward_model_score */
#include "llmc/reward/rewards.h"           /* Rewards, rewards_close, rewards_judge_modes, rewards_models, ... */
#include "llmc/reward/verify_answer.h"     /* RewardInput */
#include "llmc/rollout/episodes.h"         /* episodes_on, EPISODE_LOSS_OPTIONS, EPISODE_OPTIONS */
#include "llmc/rollout/evaluation.h"       /* Evaluation */
#include "llmc/rollout/prompts.h"          /* prompts_request, Prompts, prompts_input, prompts_item, ... */
#include "llmc/rollout/rollout.h"          /* RolloutRequest, Completion, completion_free, rollout_run, ... */
#include "llmc/rollout/trajectory.h"       /* Trajectory */
#include "llmc/train/credit.h"             /* CREDIT_LOSS_OPTIONS, Credit, CreditOptions, credit_backward, ... */
#include "llmc/train/critic.h"             /* critic_open, value_head_start */
#include "llmc/train/generation.h"         /* Generation, GenerationSlice, ScoredCompletion, generation_forward, ... */
#include "llmc/train/generation_options.h" /* GENERATION_DATA_OPTIONS, GENERATION_EVALUATION_OPTIONS, ... */
#include "llmc/train/generation_report.h"  /* generation_evaluate, generation_show, generation_check_evaluation, ... */
#include "llmc/train/mixing.h"             /* mixing_check */
#include "llmc/train/pretraining.h"        /* Pretraining, pretraining_close, pretraining_loss, ... */
#include "llmc/train/prime.h"              /* PRIME_OPTIONS, Prime, PrimeOptions, prime_advantages, ... */
#include "llmc/train/reference.h"          /* Reference, reference_bytes, reference_close, reference_open */
#include "llmc/train/rollout_dump.h"       /* RolloutDump, rollout_dump_step, ROLLOUT_DUMP_OPTIONS, ... */
#include "llmc/train/second_model.h"       /* SecondModel, SecondModelOpen, second_model_bytes, ... */
#include "llmc/train/trainer.h"            /* Trainer, state_int, trainer_require, state_real, ... */
#include "llmc/train/trainer_options.h"    /* TRAINER_LORA_OPTIONS, TRAINER_MODEL_OPTIONS, ... */

#define ALGO_CHOICES "ppo|a2c|reinforce|rloo|remax|reinforce++|reinforce++-baseline|a2po|prime"
/* The algorithms, in the order of ALGO_CHOICES. */
typedef enum { PPO, A2C, REINFORCE, RLOO, REMAX, REINFORCE_PP, REINFORCE_PP_BASELINE, A2PO, PRIME } Algo;

/* The properties of each algorithm and its defaults. least, group: minimum and default completions per prompt; epochs:
 * default passes over a generation. */
static const struct {
    bool critic, plain, whiten;
    int least, group, epochs;
    double lambda;
} algos[] = {
    // clang-format off
    /*                          critic plain  whiten least group epochs lambda */
    [PPO]                   = { true,  false, true,  1,    1,    4,     0.95 },
    [A2C]                   = { true,  true,  false, 1,    1,    1,     1    },
    [REINFORCE]             = { false, true,  false, 1,    1,    1,     1    },
    [RLOO]                  = { false, false, false, 2,    2,    1,     1    },
    [REMAX]                 = { false, false, false, 1,    1,    1,     1    },
    [REINFORCE_PP]          = { false, false, true,  1,    1,    1,     1    },
    [REINFORCE_PP_BASELINE] = { false, false, true,  2,    4,    1,     1    },
    [A2PO]                  = { false, true,  false, 1,    1,    1,     1    },
    [PRIME]                 = { false, false, true,  2,    4,    1,     1    },
    // clang-format on
};

static struct {
    TrainerOptions t;
    GenerationOptions g;
    RolloutDumpOptions rollouts;
    const char *reference, *reward_model, *gold, *gold_reward, *gold_cmd, *critic, *critic_output, *ptx;
    int algo, baseline, kl, controller, whiten_advantages, kl_loss_type, aggregation;
    bool whiten_rewards, non_eos_penalty, use_kl_loss;
    int64_t epochs, mini_batches, critic_warmup, ptx_tokens;
    double kl_coef, kl_target, kl_horizon, reward_clip, missing_eos_penalty, penalty_reward;
    double gamma, lambda, lambda_critic, length_lambda, kl_loss_coef;
    double cliprange, cliprange_high, cliprange_value, vf_coef, dual_clip, entropy_coef, target_kl;
    double critic_rate, ptx_coef;
    int gae_level; /* a GaeLevel */
    double turn_gamma;
    CreditOptions credit;
    int64_t value_samples;
    double beta1, beta2;
    bool filter_all_incorrect;
    PrimeOptions prime;
    PositiveNll positive; /* the options --positive-nll-coef and --positive-reward */
} o;

typedef enum { GAE_TOKEN, GAE_TURN } GaeLevel;

static const Option options[] = {
    // clang-format off
    GENERATION_DATA_OPTIONS(o.g),
    OPTION_INT ("max-steps", 'x', &o.t.steps, 1, 1e9,
                "number of optimizer steps (default: those of --num-train-epochs)"),
    OPTION_TEXT("ptx",       0,   &o.ptx,     "FILE", "token shard of pretraining text for --ptx-coef (PPO-ptx)"),
    GENERATION_SAMPLING_OPTIONS(o.g, 1),
    EPISODE_OPTIONS(o.g.episodes),
    EPISODE_LOSS_OPTIONS(o.g.episodes),
    OPTION_GROUP("Reward"),
    OPTION_TEXT("reward-model",         0, &o.reward_model,        "FILE",
                "reward model that scores the completions (a checkpoint from train_rm)"),
    GENERATION_REWARD_OPTIONS(o.g),
    OPTION_REAL("reward-clip",          0, &o.reward_clip,         0, 1e9, "clip scores to [-X, X]; 0 disables"),
    OPTION_REAL("missing-eos-penalty",  0, &o.missing_eos_penalty, 0, 1e9,
                "penalty on the score of a completion without a stop token"),
    OPTION_FLAG("non-eos-penalty",      0, &o.non_eos_penalty,
                "replace the score of a completion without a stop token by --penalty-reward-value"),
    OPTION_REAL("penalty-reward-value", 0, &o.penalty_reward,      -1e9, 1e9, "score used by --non-eos-penalty"),
    OPTION_FLAG("whiten-rewards",       0, &o.whiten_rewards,
                "divide the per-token rewards by their standard deviation"),
    OPTION_TEXT("gold",                 0, &o.gold,                "FILE",
                "gold reward model: logged, but not optimised"),
    OPTION_TEXT("gold-reward",          0, &o.gold_reward,         "SPEC",
                "gold reward from verifiers; same syntax as --reward"),
    OPTION_TEXT("gold-cmd",             0, &o.gold_cmd,            "PROGRAM",
                "gold reward from a program; same protocol as --reward-cmd"),
    OPTION_GROUP("KL penalty"),
    OPTION_REAL  ("kl-coef",       0, &o.kl_coef,    0, 1e6,
                  "beta, the strength of the KL penalty in the reward; larger stays closer to the reference"),
    OPTION_CHOICE("kl-estimator",  0, &o.kl,         KL_CHOICES,
                  "estimator of the per-token KL divergence"),
    OPTION_CHOICE("kl-controller", 0, &o.controller, KL_CONTROL_CHOICES,
                  "keep beta fixed, or adapt it to hold the KL at --kl-target"),
    OPTION_REAL  ("kl-target",     0, &o.kl_target,  1e-9, 1e9, "adaptive: target KL, in nats per completion"),
    OPTION_REAL  ("kl-horizon",    0, &o.kl_horizon, 1, 1e12,
                  "adaptive: number of completions in which beta may change by at most a fifth"),
    OPTION_FLAG  ("use-kl-loss",   0, &o.use_kl_loss,
                  "add a KL term to the loss, too; with --kl-coef 0 instead of that in the reward"),
    OPTION_REAL  ("kl-loss-coef",  0, &o.kl_loss_coef, 0, 1e6, "weight of the KL term of --use-kl-loss"),
    OPTION_CHOICE("kl-loss-type",  0, &o.kl_loss_type, KL_CHOICES,
                  "estimator of --use-kl-loss; verl calls them kl, mse and low_var_kl"),
    OPTION_TEXT  ("reference",     0, &o.reference,  "FILE", "reference model; the model of -c if not given"),
    OPTION_GROUP("Advantages"),
    OPTION_CHOICE("algo",                 0, &o.algo,              ALGO_CHOICES,
                  "algorithm"),
    OPTION_CHOICE("baseline",             0, &o.baseline,          "auto|none",
                  "reinforce: what is subtracted from the returns: the mean of the others, or nothing; both have the same "
                  "expected gradient"),
    OPTION_REAL  ("beta1",                0, &o.beta1,             1e-6, 1e6,
                  "a2po: KL temperature of V, the logarithm of the mean of exp(reward / X), times X"),
    OPTION_REAL  ("beta2",                0, &o.beta2,             1e-9, 1e6,
                  "a2po: KL temperature of the regression; larger stays closer to the reference"),
    OPTION_INT   ("num-value-samples",    0, &o.value_samples,     1, 4096,
                  "a2po: samples of the reference per prompt, from which V is estimated before the first step"),
    OPTION_FLAG  ("filter-all-incorrect", 0, &o.filter_all_incorrect,
                  "a2po: leave out prompts of which all these samples have the reward 0"),
    OPTION_REAL  ("gamma",                0, &o.gamma,             0, 1, "discount factor of later rewards"),
    OPTION_REAL  ("lam",                  0, &o.lambda,            0, 1,
                  "lambda of GAE (default: that of --algo: ppo 0.95, a2c 1)"),
    OPTION_REAL  ("lam-critic",           0, &o.lambda_critic,     0, 1,
                  "lambda of the critic's target (VC-PPO: 1; default: --lam)"),
    OPTION_REAL  ("lam-length",           0, &o.length_lambda,     0, 1e6,
                  "alpha of the policy's lambda = 1 - 1 / (alpha length); 0 uses --lam (VAPO: 0.05)"),
    OPTION_CHOICE("gae-level",            0, &o.gae_level,         "token|turn",
                  "the steps of GAE; turn: turns, and the tokens within each (VAGEN's and RAGEN's bi_level_gae)"),
    OPTION_REAL  ("turn-gamma",           0, &o.turn_gamma,        0, 1,
                  "--gae-level turn: discount factor of later turns (VAGEN's high_level_gamma)"),
    OPTION_CHOICE("whiten-advantages",    0, &o.whiten_advantages, "auto|no|yes",
                  "normalise advantages to mean 0 and variance 1; auto: yes for ppo, reinforce++ and prime"),
    OPTION_TEXT  ("critic",               0, &o.critic,            "FILE",
                  "start a separate critic from this checkpoint; if not given, the policy has a value head"),
    OPTION_REAL  ("critic-learning-rate", 0, &o.critic_rate,       0, 10,
                  "peak learning rate of the separate critic; 0 uses --learning-rate"),
    OPTION_INT   ("critic-warmup",        0, &o.critic_warmup,     0, 1e9,
                  "number of initial optimizer steps that train only the separate critic"),
    OPTION_TEXT  ("critic-output",        0, &o.critic_output,     "FILE", "output file of the separate critic"),
    PRIME_OPTIONS(o.prime),
    OPTION_GROUP("Loss"),
    OPTION_INT ("num-ppo-epochs",   0, &o.epochs,          1, 1000,
                "passes over each generation (default: that of --algo: ppo 4, others 1)"),
    OPTION_INT ("num-mini-batches", 0, &o.mini_batches,    1, 65536, "optimizer steps per pass"),
    OPTION_CHOICE("loss-agg-mode",  0, &o.aggregation, LOSS_AGG_CHOICES,
                "from the losses of tokens to that of the batch"),
    OPTION_REAL("cliprange",        0, &o.cliprange,       0, 1e6, "clip the ratio to [1 - X, 1 + X]"),
    OPTION_REAL("cliprange-high",   0, &o.cliprange_high,  0, 1e6, "upper clip range; 0 uses --cliprange"),
    OPTION_REAL("dual-clip",        0, &o.dual_clip,       0, 1e6,
                "bound of the loss if the advantage is negative; 0 disables"),
    OPTION_REAL("cliprange-value",  0, &o.cliprange_value, 0, 1e6,
                "clip values to within X of the old values; 0 disables"),
    OPTION_REAL("vf-coef",          0, &o.vf_coef,         0, 1e6, "weight of the value loss"),
    OPTION_REAL("entropy-coef",     0, &o.entropy_coef,    -100, 100, "weight of the entropy bonus"),
    CREDIT_LOSS_OPTIONS(o.credit),
    OPTION_REAL("target-kl",        0, &o.target_kl,       0, 1e6,
                "end the passes over a generation once policy/approxkl_avg exceeds this; 0 disables"),
    OPTION_REAL("positive-nll-coef", 0, &o.positive.coef,  0, 1e6,
                "VAPO: weight of the negative log-likelihood of right completions, a mean over their tokens"),
    OPTION_REAL("positive-reward",  0, &o.positive.reward, -1e9, 1e9,
                "score from which a completion is right for --positive-nll-coef"),
    OPTION_REAL("ptx-coef",         0, &o.ptx_coef,        0, 1e6,
                "weight of the pretraining loss (InstructGPT: 27.8)"),
    OPTION_INT ("ptx-tokens",       0, &o.ptx_tokens,      2, 1 << 24,
                "tokens of pretraining text per optimizer step"),
    JUDGE_OPTIONS(o.g.judge),
    TRAINER_MODEL_OPTIONS(o.t),
    TRAINER_LORA_OPTIONS(o.t),
    TRAINER_OPTIMIZER_OPTIONS(o.t),
    TRAINER_OUTPUT_OPTIONS(o.t),
    ROLLOUT_DUMP_OPTIONS(o.rollouts),
    GENERATION_EVALUATION_OPTIONS(o.g, o.t),
    OPTION_END
    // clang-format on
};

static const OptionAbout about = {
    "-c MODEL --reward-model RM -i prompts.shard -o OUT [options]",
    "Trains a model on rewards for its own samples: PPO, A2C, REINFORCE, RLOO, ReMax, REINFORCE++, A*-PO, PRIME.\n\n"
    "  ./train_ppo -c sft.bin --reward-model rm.bin -i prompts.shard -o ppo.bin\n"
    "  ./train_ppo -c sft.bin --reward-model rm.bin --gold gold.bin -i prompts.shard -o ppo.bin --kl-coef 0 \\\n"
    "      --report hacked.html\n"
    "  ./train_ppo -c sft.bin --reward verify -i tasks.shard -o rloo.bin --algo rloo -G 4\n"
    "  ./train_ppo -c sft.bin --reward verify -i tasks.shard -o prime.bin --algo prime --prm-output prm.bin"};

typedef struct Run {
    Trainer t;
    Reference reference;
    Workspace work;
    Generation g;
    RewardModel reward_model, gold;
    Rewards gold_reward;
    SecondModel critic;
    Prime prime;
    Pretraining ptx;
    KlControl beta;
    RolloutDump dump;
    Credit credit; /* of turns */
    PpoConfig loss;
    int64_t generation;     /* number of generations so far */
    double *optimal_value;  /* (prompts) a2po: V; 0: the prompt is left out */
    uint8_t *left_out;      /* (prompts) a2po: 1: never sampled */
    A2poStats a2po;         /* of the generation */
    PositiveNll positive;   /* of the step */
    double positive_nll[2]; /* over the steps of a generation: nats, tokens */
    /* (completions) kl: in nats; greedy: score of the greedy completion to the same prompt; R: return */
    float *score, *kl, *gold_score, *greedy, *R, *baseline, *completion_advantage;
    float *reward, *advantage, *value, *old_value, *target, *dvalue; /* (tokens) */
} Run;

static bool has_critic(void) { return algos[o.algo].critic; }
static bool has_head(void) { return has_critic() && !o.critic; } /* the policy has a value head */
static bool has_gold(void) { return o.gold || o.gold_reward || o.gold_cmd; }
static bool has_reference(void) {
    return o.kl_coef > 0 || o.use_kl_loss || has_gold() || o.reference || o.algo == A2PO || o.algo == PRIME;
}
static bool has_target(void) { return o.algo == RLOO || o.algo == A2PO; } /* a number per completion, not per token */
static bool whitens(void) { return o.whiten_advantages == 2; } /* after check_options() it is "no" or "yes" */
static bool on_policy(void) { return o.epochs * o.mini_batches == 1; }

/* ---- 1. sample and score ----------------------------------------------------------------------------------------- */

/* Adds the reward model's scores of completions [0, n) to sum. Collective. */
static void add_model_scores(Run *r, RewardModel *m, const ScoredCompletion *scored, int32_t n, float *sum) {
    Error e;
    const Prompts *p = &r->g.train;
    RewardItem *item = (RewardItem *)xcalloc((size_t)n, sizeof *item);
    float *score = (float *)xcalloc((size_t)n, sizeof *score);
    const int64_t before = m->rows;
    for (int32_t i = 0; i < n; i++) item[i] = prompts_item(p, scored[i].prompt, &scored[i].completion);
    const int ranks = r->t.dist.ranks, rank = r->t.dist.rank;
    double *cost = (double *)xcalloc((size_t)n, sizeof *cost);
    int64_t cut[ranks + 1]; /* rank r scores [cut[r], cut[r+1]) */
    for (int32_t i = 0; i < n; i++) cost[i] = (double)item[i].prompt_len + item[i].completion_len;
    dist_cut(cost, n, ranks, cut);
    const int32_t own = (int32_t)(cut[rank + 1] - cut[rank]);
    trainer_require(&r->t, reward_model_score(m, item + cut[rank], own, score + cut[rank], &e), &e);
    dist_complete(&r->t.dist, score, cut, sizeof *score);
    free(cost);
    for (int32_t i = 0; i < n; i++) sum[i] += score[i];
    r->t.flops += model_flops(&m->model.config, (double)(m->rows - before), 0, 0, 1);
    free(item), free(score);
}

/* The score that is optimised: the verifiers' (in scored.reward) plus the reward model's, clipped; unfinished
 * completions are penalised. */
static void score_completions(Run *r, const ScoredCompletion *scored, int32_t n, float *score) {
    for (int32_t i = 0; i < n; i++) score[i] = scored[i].reward;
    if (o.reward_model) add_model_scores(r, &r->reward_model, scored, n, score);
    for (int32_t i = 0; i < n; i++) {
        if (o.reward_clip > 0) score[i] = (float)clamp(score[i], -o.reward_clip, o.reward_clip);
        if (scored[i].completion.finished || isnan(score[i])) continue;
        score[i] = (float)(o.non_eos_penalty ? o.penalty_reward : score[i] - o.missing_eos_penalty);
    }
}

/* The gold rewards of a generation's completions; gold: (completions). */
static void score_gold(Run *r, const Generation *g, float *gold) {
    Error e;
    const int32_t n = g->completions;
    memset(gold, 0, (size_t)n * sizeof *gold);
    if (o.gold_reward || o.gold_cmd) {
        const size_t K = (size_t)r->gold_reward.count;
        RewardInput *in = (RewardInput *)xcalloc((size_t)n, sizeof *in);
        float *parts = (float *)xcalloc((size_t)n * K, sizeof *parts);
        for (int32_t i = 0; i < n; i++)
            in[i] = prompts_input(&g->train, g->scored[i].prompt, g->scored[i].text, g->scored[i].text_length,
                                  &g->scored[i].completion, g->scored[i].id, (int32_t)o.g.max_completion);
        trainer_require(&r->t, rewards_score(&r->gold_reward, in, n, parts, gold, &e), &e);
        free(in), free(parts);
    }
    if (o.gold) add_model_scores(r, &r->gold, g->scored, n, gold);
}

/* Scores the completions of --rollouts: RolloutScore. */
static void score_rollouts(void *run, Generation *fixed, float *score, float *gold) {
    Run *r = (Run *)run;
    score_completions(r, fixed->scored, fixed->completions, score);
    if (has_gold()) score_gold(r, fixed, gold);
}

/* ReMax's baseline: the score of the greedy completion to each prompt, copied to every completion of its group. */
static void score_greedy(Run *r) {
    Error e;
    Generation *g = &r->g;
    const int32_t G = (int32_t)o.g.generations, P = g->completions / G;
    Sampling how = g->sampling;
    ScoredCompletion *scored = (ScoredCompletion *)xcalloc((size_t)P, sizeof *scored);
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)P, sizeof *q);
    how.temperature = 0;
    for (int32_t i = 0; i < P; i++) {
        scored[i].prompt = g->scored[i * G].prompt;
        scored[i].id = g->scored[i * G].id;
        q[i] = prompts_request(&g->train, scored[i].prompt, 1, 0, &scored[i].completion);
    }
    if (!rollout_run(&g->engine, &how, q, P, NULL, NULL, &e)) die("%s: %s", g->train.shard.name, e.text);
    generation_score_completions(g, scored, P);
    score_completions(r, scored, P, r->greedy);
    for (int32_t i = P - 1; i >= 0; i--)
        for (int32_t k = G - 1; k >= 0; k--) r->greedy[i * G + k] = r->greedy[i];
    for (int32_t i = 0; i < P; i++) {
        completion_free(&scored[i].completion);
        free(scored[i].text);
    }
    free(scored), free(q);
}

/* Samples of m prompts, `prompt`, from the policy, which is the reference before the first step, for A*-PO: writes V to
 * optimal_value, 0 for prompts to be left out, and 1 to left_out for these. Collective: every rank has prompts of its own,
 * maybe none. */
static void estimate_part(Run *r, const int64_t *prompt, int32_t m) {
    Error e;
    Generation *g = &r->g;
    const int32_t n = (int32_t)o.value_samples;
    ScoredCompletion *scored = (ScoredCompletion *)xcalloc((size_t)m * (size_t)n + 1, sizeof *scored);
    Completion *out = (Completion *)xcalloc((size_t)m * (size_t)n + 1, sizeof *out);
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)m + 1, sizeof *q);
    float *score = (float *)xcalloc((size_t)m * (size_t)n + 1, sizeof *score);
    for (int32_t i = 0; i < m; i++) /* ids that no completion of a generation has */
        q[i] = prompts_request(&g->train, prompt[i], n, ((uint64_t)1 << 55) + (uint64_t)prompt[i] * (uint64_t)n,
                               out + i * n);
    if (!rollout_run(&g->engine, &g->sampling, q, m, NULL, NULL, &e)) die("%s: %s", g->train.shard.name, e.text);
    for (int32_t i = 0; i < m * n; i++)
        scored[i] =
            (ScoredCompletion){.completion = out[i], .prompt = prompt[i / n], .id = q[i / n].id + (uint64_t)(i % n)};
    generation_score_completions(g, scored, m * n);
    score_completions(r, scored, m * n, score);
    for (int32_t i = 0; i < m; i++) {
        const double V = a2po_value(o.beta1, score + i * n, n);
        bool any = false;
        for (int32_t k = 0; k < n; k++) any = any || (!isnan(score[i * n + k]) && score[i * n + k] != 0);
        r->left_out[prompt[i]] = isnan(V) || (o.filter_all_incorrect && !any);
        r->optimal_value[prompt[i]] = r->left_out[prompt[i]] ? 0 : V;
    }
    for (int32_t i = 0; i < m * n; i++) {
        completion_free(&scored[i].completion);
        free(scored[i].text);
    }
    free(scored), free(out), free(q), free(score);
}

/* A*-PO's first stage: V of every training prompt, which is kept in the state. Collective. */
static void estimate_values(Run *r) {
    Trainer *t = &r->t;
    const int64_t count = r->g.train.count, ranks = t->dist.ranks;
    const RunPhase phase = metrics_phase(&t->metrics, RUN_SAMPLING);
    enum { PART = 64 }; /* prompts of a rank at a time */
    for (int64_t first = 0; first < count; first += PART * ranks) {
        int64_t prompt[PART];
        int32_t m = 0;
        for (int64_t i = first + t->dist.rank; i < count && m < PART; i += ranks) prompt[m++] = i;
        estimate_part(r, prompt, m);
    }
    double *out = (double *)xcalloc((size_t)count, sizeof *out), mean = 0, dropped = 0;
    for (int64_t i = 0; i < count; i++) out[i] = r->left_out[i];
    dist_sum(&t->dist, r->optimal_value, (int)count);
    dist_sum(&t->dist, out, (int)count);
    json_t *all = json_array();
    for (int64_t i = 0; i < count; i++) {
        r->left_out[i] = out[i] > 0;
        dropped += out[i];
        mean += out[i] > 0 ? 0 : r->optimal_value[i];
        json_array_append_new(all, out[i] > 0 ? json_null() : json_real(r->optimal_value[i]));
    }
    free(out);
    if (dropped >= (double)count)
        die("--algo a2po: none of %lld samples of the model of -c has a reward, for any of the %lld prompts; more samples, "
            "--num-value-samples, or easier prompts are needed",
            (long long)o.value_samples, (long long)count);
    json_object_set_new(t->state, "optimal_values", all);
    if (!t->dist.rank && !o.t.quiet)
        fprintf(stderr, "a2po    V of %lld prompts from %lld samples each: mean %.3f; %.0f prompts are left out\n",
                (long long)count, (long long)o.value_samples, mean / ((double)count - dropped), dropped);
    metrics_phase(&t->metrics, phase);
}

/* Takes V from the state of a resumed run. */
static void load_values(Run *r) {
    const json_t *all = json_object_get(r->t.state, "optimal_values");
    if (json_array_size(all) != (size_t)r->g.train.count)
        die("%s: it has optimal values of %zu prompts, not of %lld", o.t.resume, json_array_size(all),
            (long long)r->g.train.count);
    for (int64_t i = 0; i < r->g.train.count; i++) {
        const json_t *V = json_array_get(all, (size_t)i);
        r->left_out[i] = !json_is_real(V);
        r->optimal_value[i] = json_real_value(V);
    }
}

/* Samples a generation and scores its completions. A completion that could not be scored does not count. */
static void sample_and_score(Run *r) {
    Generation *g = &r->g;
    const double start = clock_seconds();
    const RunPhase phase = metrics_phase(&r->t.metrics, RUN_SAMPLING);
    generation_sample(g, 0, (int32_t)o.g.prompts);
    g->gen_seconds = clock_seconds() - start;
    metrics_phase(&r->t.metrics, RUN_REWARD);
    generation_score(g, 0, (int32_t)o.g.prompts);
    generation_flatten(g, false);
    score_completions(r, g->scored, g->completions, r->score);
    if (o.algo == REMAX) score_greedy(r);
    if (has_gold()) score_gold(r, g, r->gold_score);
    g->reward_seconds = clock_seconds() - start - g->gen_seconds;
    metrics_phase(&r->t.metrics, phase);
    for (int32_t i = 0; i < g->completions; i++)
        if (isnan(r->score[i]) || isnan(r->greedy[i])) g->counts[i] = 0;
    if (o.algo == PRIME) prime_outcomes(&r->prime, r->score);
}

/* ---- 2. old policy ----------------------------------------------------------------------------------------------- */

/* Computes log pi_old, the old values, log ref and the process rewards. If a generation gives only one step, the sampler's
 * log-probabilities are used as log pi_old. */
static void score_old_policy(Run *r) {
    Generation *g = &r->g;
    const ModelOutput policy = {.logp = on_policy() && !o.g.episodes.unmasked ? NULL : g->old_logp,
                                .value = has_head() ? r->old_value : NULL};
    if (policy.logp || policy.value) generation_forward(g, &r->t.model, &r->work, 0, g->completions, &policy);
    generation_observed_logps(g);
    if (on_policy()) memcpy(g->old_logp, g->sampler_logp, (size_t)g->offset[g->completions] * sizeof(float));
    const ModelOutput critic = {.value = r->old_value};
    const ModelOutput reference = {.logp = g->ref_logp};
    if (o.critic) generation_forward(g, &r->critic.model, &r->critic.work, 0, g->completions, &critic);
    if (has_reference()) generation_forward(g, &r->reference.model, &r->reference.work, 0, g->completions, &reference);
    if (o.algo == PRIME) prime_rewards(&r->prime, r->score);
}

/* ---- 3. token rewards -------------------------------------------------------------------------------------------- */

/* With --gae-level turn: moves the rewards of turns from the last token of a completion to the last tokens of the turns. */
static void place_turn_rewards(Run *r) {
    const Generation *g = &r->g;
    for (int32_t i = 0; i < g->completions; i++) {
        const Trajectory *y = g->scored[i].completion.trajectory;
        const int32_t last = g->offset[i + 1] - 1;
        if (!y || !g->counts[i] || isnan(y->reward)) continue;
        r->reward[last] -= y->reward - (isnan(y->end_reward) ? 0 : y->end_reward);
        int32_t t = last;
        for (int32_t k = y->turns - 1; k >= 0; k--) {
            while (t > g->offset[i] && r->credit.turn[t] > k) t--;
            if (!isnan(y->turn_reward[k])) r->reward[t] += y->turn_reward[k];
        }
    }
}

static void compute_rewards(Run *r) {
    const Generation *g = &r->g;
    credit_turns(&r->credit, g);
    for (int32_t i = 0; i < g->completions; i++) {
        const int32_t at = g->offset[i], n = g->offset[i + 1] - at;
        r->kl[i] = (float)token_rewards((KlEstimator)o.kl, g->old_logp + at, has_reference() ? g->ref_logp + at : NULL,
                                        n, r->beta.coef, g->counts[i] ? r->score[i] : 0, r->reward + at);
    }
    if (o.gae_level) place_turn_rewards(r);
    if (o.whiten_rewards) whiten(r->reward, g->offset, g->completions, g->counts, false);
}

/* ---- 4. advantages ----------------------------------------------------------------------------------------------- */

/* Writes the advantages of completion i by GAE. */
static void gae_of(const Run *r, int32_t i, double lambda, float *advantage) {
    const int32_t at = r->g.offset[i], n = r->g.offset[i + 1] - at;
    const float *reward = r->reward + at, *value = r->old_value + at;
    if (o.gae_level == GAE_TURN)
        gae_turns(reward, value, r->credit.turn + at, n, o.gamma, lambda, o.turn_gamma, advantage + at);
    else gae(reward, value, n, o.gamma, lambda, advantage + at);
}

static void compute_advantages(Run *r) {
    const Generation *g = &r->g;
    const int32_t n = g->completions, G = (int32_t)o.g.generations;
    for (int32_t i = 0; i < n; i++) {
        const int32_t at = g->offset[i], T = g->offset[i + 1] - at;
        r->R[i] = (float)returns_to_go(r->reward + at, T, o.gamma, r->advantage + at);
        if (!has_critic()) continue;
        gae_of(r, i, o.lambda_critic, r->target);
        for (int32_t t = at; t < at + T; t++) r->target[t] += r->old_value[t];
        gae_of(r, i, gae_length_lambda(o.lambda, o.length_lambda, T), r->advantage);
    }
    if (o.algo == A2PO) {
        memset(r->advantage, 0, (size_t)g->offset[n] * sizeof *r->advantage);
        for (int32_t i = 0; i < n; i++)
            r->completion_advantage[i] = (float)((double)r->score[i] - r->optimal_value[g->scored[i].prompt]);
    }
    const bool others = o.algo == REINFORCE && !o.baseline;
    if (others) mean_baseline(r->R, g->counts, n, n, false, r->baseline);
    if (o.algo == REINFORCE_PP_BASELINE) mean_baseline(r->R, g->counts, n, G, true, r->baseline);
    if (o.algo == REMAX) memcpy(r->baseline, r->greedy, (size_t)n * sizeof *r->baseline);
    if (others || o.algo == REINFORCE_PP_BASELINE || o.algo == REMAX) {
        for (int32_t i = 0; i < n; i++) {
            const int32_t at = g->offset[i];
            subtract_baseline(r->advantage + at, g->offset[i + 1] - at, r->baseline[i], r->advantage + at);
        }
    }
    if (o.algo == RLOO) {
        AdvantageStats unused;
        for (int32_t i = 0; i < n; i++)
            if (!g->counts[i]) r->R[i] = NAN;
        advantage_rloo(r->R, n / G, G, whitens(), r->completion_advantage, &unused);
        return;
    }
    if (o.algo == PRIME) prime_advantages(&r->prime, r->score, r->advantage);
    if (whitens()) whiten(r->advantage, g->offset, n, g->counts, true);
}

/* ---- 5. update --------------------------------------------------------------------------------------------------- */

/* RLOO's surrogate, with one ratio per completion, from loss/policy.h. */
static double rloo_loss(Run *r, const GenerationSlice *x, const PolicyNormaliser *N, PpoStats *stats) {
    PolicyLossConfig c = policy_loss_config(POLICY_RLOO);
    c.epsilon = r->loss.cliprange;
    c.epsilon_high = r->loss.cliprange_high;
    c.entropy_coef = o.entropy_coef;
    c.beta = r->loss.kl_coef;
    c.kl = r->loss.kl;
    c.kl_bias_correction = false;
    const PolicyBatch b = {.completions = x->count,
                           .offset = x->offset,
                           .advantage = r->completion_advantage + x->first,
                           .counts = x->counts,
                           .logp = x->logp,
                           .old_logp = on_policy() ? NULL : x->old_logp,
                           .ref_logp = c.beta > 0 ? x->ref_logp : NULL,
                           .sampler_logp = x->sampler_logp,
                           .entropy = x->entropy};
    PolicyStats s = policy_stats();
    if (r->dump.clip) clip_histogram_policy(r->dump.clip, &c, &b);
    double loss = policy_loss(&c, N, &b, x->dlogp, x->dentropy, &s);
    loss += credit_llds(&r->credit, x, &b, N->tokens);
    stats->sum.tokens += s.sum.tokens;
    stats->sum.ratio += s.sum.ratio;
    stats->sum.square_log += s.sum.square_log;
    stats->sum.entropy += s.sum.entropy;
    stats->sum.kl += s.sum.kl;
    for (int32_t t = 0; t < x->offset[x->count]; t++)
        stats->sum.ratio_square += on_policy() ? 1 : exp(2 * ((double)x->logp[t] - x->old_logp[t]));
    stats->sum.clipped += s.sum.completions > 0 ? s.sum.region / s.sum.completions * s.sum.tokens : 0;
    stats->sum.policy_loss += s.sum.policy_loss;
    stats->max.sampler_gap = fmax(stats->max.sampler_gap, s.max.sampler_gap);
    return loss;
}

/* Runs the policy's part of a micro-batch forward and returns its loss; dlogp and dentropy are written to x. */
static double policy_loss_of(Run *r, const GenerationSlice *x, const LossNormaliser *all, const PolicyNormaliser *N,
                             PpoStats *stats) {
    credit_forward(&r->credit, &r->g, x, &r->t.model, &r->work, (float)o.g.temperature,
                   has_head() ? r->value + x->at : NULL);
    if (o.algo == RLOO) return rloo_loss(r, x, N, stats);
    const PpoBatch b = {.completions = x->count,
                        .offset = x->offset,
                        .counts = x->counts,
                        .logp = x->logp,
                        .old_logp = on_policy() ? NULL : x->old_logp,
                        .ref_logp = x->ref_logp,
                        .advantage = r->advantage + x->at,
                        .entropy = x->entropy,
                        .sampler_logp = x->sampler_logp};
    if (!on_policy()) rollout_dump_count(&r->dump, x, r->advantage + x->at);
    const double loss = ppo_policy_loss(&r->loss, all, &b, x->dlogp, x->dentropy, stats);
    if (o.algo != A2PO) return loss; /* else its advantages are 0 */
    const A2poBatch y = {.completions = x->count,
                         .offset = x->offset,
                         .target = r->completion_advantage + x->first,
                         .counts = x->counts,
                         .logp = x->logp,
                         .ref_logp = x->ref_logp};
    const double regression = a2po_loss(o.beta2, all->completions, &y, x->dlogp, &r->a2po);
    stats->sum.policy_loss += regression;
    return loss + regression;
}

/* VAPO's likelihood of right completions in a micro-batch, whose gradient is added to x->dlogp. */
static double positive_loss(Run *r, const GenerationSlice *x) {
    const PositiveBatch right = {x->count, x->offset, r->score + x->first, x->counts, x->logp};
    return positive_nll_add(&r->positive, &right, x->dlogp);
}

/* The separate critic's values of the drawn tokens of a micro-batch, which may have observed ones as further targets. */
static void critic_forward(Run *r, const GenerationSlice *x) {
    const int32_t drawn = x->offset[x->count];
    const bool more = r->g.batch.targets > drawn;
    const ModelOutput out = {.value = more ? r->credit.value : r->value + x->at};
    model_forward(&r->critic.model, &r->critic.work, &r->g.batch, (float)o.g.temperature, &out);
    if (more) memcpy(r->value + x->at, r->credit.value, (size_t)drawn * sizeof *r->value);
}

/* Returns the loss of the values and writes dvalue. The values are those of the policy's value head, or of a separate
 * critic, which is first run forward. */
static double value_loss_of(Run *r, const GenerationSlice *x, const LossNormaliser *all, PpoStats *stats) {
    if (!has_critic()) return 0;
    if (o.critic) critic_forward(r, x);
    const PpoBatch b = {.completions = x->count,
                        .offset = x->offset,
                        .counts = x->counts,
                        .value = r->value + x->at,
                        .old_value = r->old_value + x->at,
                        .target = r->target + x->at};
    return ppo_value_loss(&r->loss, all, &b, r->dvalue + x->at, stats);
}

/* Adds the gradients of a micro-batch. warming: only those of the separate critic, if there is one. Returns the loss of
 * observed tokens. */
static double backward(Run *r, const GenerationSlice *x, bool warming) {
    Trainer *t = &r->t;
    const Batch *b = &r->g.batch;
    const float T = (float)o.g.temperature;
    double loss = 0;
    if (!warming) {
        loss = credit_backward(&r->credit, &r->g, x, &t->model, &r->work, T, o.entropy_coef != 0 ? x->dentropy : NULL,
                               has_head() ? r->dvalue + x->at : NULL);
        generation_count_step(&r->g, &t->model, x->first, x->first + x->count);
    }
    if (o.critic) {
        model_backward(&r->critic.model, &r->critic.work, b, T, NULL, NULL,
                       credit_dvalue(&r->credit, &r->g, x, r->dvalue + x->at));
        t->flops += model_flops(&r->critic.model.config, b->rows, 0, batch_pairs(b), 3);
    }
    return loss;
}

/* One optimizer step on completions [first, end). warming: the policy stays, and only the separate critic, if there is one, is
 * trained here. Returns the loss.
 * Collective. */
static double update_step(Run *r, int32_t first, int32_t end, bool warming, PpoStats *stats) {
    Trainer *t = &r->t;
    Generation *g = &r->g;
    const LossNormaliser all = ppo_normaliser((LossAggregation)o.aggregation, (double)o.g.max_completion,
                                              g->offset + first, end - first, g->counts + first);
    const PolicyNormaliser N = policy_normaliser(g->offset + first, end - first, g->counts + first, NULL);
    double loss = 0, value_loss = 0, text = 0;
    PpoStats part = {0};
    const int64_t step = t->step;
    int32_t mine, last;
    positive_nll_begin(&r->positive, r->score + first, g->counts + first, g->offset + first, end - first);
    credit_begin(&r->credit, g, first, end);
    generation_mine(g, first, end, &mine, &last);
    const MicroPlan *plan = generation_plan(g, mine, last);
    if (!warming) {
        const int64_t more = o.ptx_coef > 0 ? pretraining_plan(&r->ptx, t, &g->batch, o.ptx_tokens) : 0;
        dist_grads_begin(&t->grads, plan->micros + more);
    }
    for (int32_t m = 0; m < plan->micros; m++) {
        const GenerationSlice x = generation_pack(g, plan->first[m], plan->first[m + 1]);
        if (!warming) {
            loss += policy_loss_of(r, &x, &all, &N, &part);
            loss += positive_loss(r, &x);
        }
        value_loss += value_loss_of(r, &x, &all, &part);
        loss += backward(r, &x, warming);
    }
    if (o.ptx_coef > 0 && !warming) text = pretraining_loss(&r->ptx, t, &r->work, &g->batch, o.ptx_coef);
    value_loss = dist_total(&t->dist, value_loss);
    loss = dist_total(&t->dist, loss) + value_loss + text;
    dist_sum(&t->dist, &r->positive.sum, 1);
    if (!warming) {
        r->positive_nll[0] += r->positive.sum;
        r->positive_nll[1] += r->positive.tokens;
    }
    dist_sum(&t->dist, DIST_FIELDS(part.sum));
    dist_max(&t->dist, DIST_FIELDS(part.max));
    ppo_stats_add(stats, &part);
    t->trained += (int64_t)part.sum.tokens;
    stats->updates++;
    if (warming) {
        t->intact = false;
        t->step++;
        t->learning_rate = 0;
    } else {
        trainer_update(t, loss);
    }
    if (o.critic) second_model_step(&r->critic, value_loss, step);
    return loss;
}

/* Makes all passes over a generation. Returns the mean loss of the steps. */
static double update(Run *r, PpoStats *stats) {
    Trainer *t = &r->t;
    const int32_t size = r->g.completions / (int32_t)o.mini_batches;
    const int64_t warmup = o.algo == PRIME ? o.prime.warmup : o.critic_warmup;
    double loss = 0;
    r->positive_nll[0] = r->positive_nll[1] = 0;
    r->a2po = (A2poStats){0};
    for (int64_t epoch = 0; epoch < o.epochs && t->step < t->steps; epoch++) {
        const PpoStats before = *stats;
        for (int32_t m = 0; m < o.mini_batches && t->step < t->steps; m++)
            loss += update_step(r, m * size, (m + 1) * size, t->step < warmup, stats);
        const double tokens = fmax(stats->sum.tokens - before.sum.tokens, 1);
        if (o.target_kl > 0 && (stats->sum.square_log - before.sum.square_log) / (2 * tokens) > o.target_kl) break;
    }
    if (o.algo == A2PO) dist_sum(&t->dist, DIST_FIELDS(r->a2po));
    return loss / stats->updates;
}

/* ---- logging --------------------------------------------------------------------------------------------------- */

typedef struct Objective {
    double score, score_std, kl, entropy, gold;
} Objective;

/* Means over the completions that count. */
static Objective objective_of(const Run *r) {
    const Generation *g = &r->g;
    Objective m = {0};
    double n = 0;
    for (int32_t i = 0; i < g->completions; i++) {
        if (!g->counts[i]) continue;
        n++;
        m.kl += r->kl[i];
        for (int32_t t = g->offset[i]; t < g->offset[i + 1]; t++) m.entropy -= g->old_logp[t];
    }
    const Spread scores = spread_of(r->score, g->completions, 1);
    m.score = scores.mean;
    m.score_std = scores.std;
    m.gold = spread_of(r->gold_score, g->completions, 1).mean; /* over the completions with a gold score */
    m.kl /= n;
    m.entropy /= n;
    return m;
}

/* Logs the metrics of a generation under TRL's names. Means over tokens include no padding. */
static void log_generation(Run *r, const Objective *m, const PpoStats *s) {
    const Generation *g = &r->g;
    Metrics *to = &r->t.metrics;
    const double tokens = fmax(s->sum.tokens, 1), ratio = s->sum.ratio / tokens,
                 seconds = clock_seconds() - r->t.step_start;
    double ended = 0;
    for (int32_t i = 0; i < g->completions; i++) ended += g->scored[i].completion.finished;
    metrics_set(to, "objective/scores", m->score);
    metrics_set(to, "objective/scores_std", m->score_std);
    if (has_gold()) metrics_set(to, "objective/gold", m->gold);
    metrics_set(to, "objective/entropy", m->entropy);
    if (has_reference()) {
        metrics_set(to, "objective/kl", m->kl);
        metrics_set(to, "objective/kl_coef", r->beta.coef);
        metrics_set(to, "objective/non_score_reward", 0 - r->beta.coef * m->kl);
        metrics_set(to, "objective/rlhf_reward", m->score - r->beta.coef * m->kl);
    }
    if (s->sum.tokens > 0) {
        metrics_set(to, "policy/approxkl_avg", s->sum.square_log / (2 * tokens));
        metrics_set(to, "policy/clipfrac_avg", s->sum.clipped / tokens);
        metrics_set(to, "policy/entropy_avg", s->sum.entropy / tokens);
        if (o.use_kl_loss) metrics_set(to, "loss/kl_avg", s->sum.kl / tokens);
        metrics_set(to, "loss/policy_avg", s->sum.policy_loss / s->updates);
        metrics_set(to, "val/ratio", ratio);
        metrics_set(to, "val/ratio_var", fmax(s->sum.ratio_square / tokens - ratio * ratio, 0));
        metrics_set(to, "sampling/sampling_logp_difference/max", s->max.sampler_gap);
        if (o.positive.coef > 0) metrics_set(to, "positive_nll", r->positive_nll[0] / r->positive_nll[1]);
    }
    if (has_critic()) {
        metrics_set(to, "loss/value_avg", s->sum.value_loss / s->updates);
        metrics_set(to, "val/clipfrac_avg", s->sum.value_clipped / fmax(s->sum.value_tokens, 1));
        metrics_set(to, "critic/vf_explained_var",
                    explained_variance(r->old_value, r->target, g->offset, g->completions, g->counts));
        metrics_set(to, "critic/values/mean", moments_of(r->old_value, g->offset, g->completions, g->counts).mean);
        metrics_set(to, "critic/returns/mean", moments_of(r->target, g->offset, g->completions, g->counts).mean);
        if (o.critic) metrics_set(to, "critic/grad_norm", r->critic.update.grad_norm);
    }
    if (o.algo == A2PO) { /* TRL's names */
        const double N = r->a2po.completions;
        metrics_set(to, "implicit_reward", r->a2po.implicit / N);
        metrics_set(to, "advantage", r->a2po.target / N);
        metrics_set(to, "v_star", m->score - r->a2po.target / N);
    }
    if (o.algo == PRIME) prime_log(&r->prime);
    if (o.ptx_coef > 0) metrics_set(to, "loss/ptx", r->ptx.loss);
    metrics_set(to, "val/num_eos_tokens", ended);
    metrics_set(to, "episode", (double)r->g.next_id);
    metrics_set(to, "eps", (double)g->completions / seconds);
    if (s->sum.tokens > 0) credit_log(&r->credit, &r->g);
    generation_log(&r->g);
    if (m->score_std < 1e-8) metrics_warn(to, "all scores are equal: there is nothing to learn from");
    if (isnan(m->score)) metrics_warn(to, "no completion could be scored");
    if (on_policy()) generation_check_sampler(&r->g, s->max.sampler_gap);
}

/* Prints Gao et al.'s fit of the gold reward to the distance from the initial policy. */
static void say_overoptimisation(Trainer *t) {
    const GaoFit f = overoptimisation_fit(&t->metrics.history, "objective/gold");
    if (!f.good) return;
    metrics_line(&t->metrics,
                 "gold reward R(d) = %.3g + d (%.3g - %.3g log d), d = sqrt(KL), R2 %.2f: highest %.3g at KL %.3g, "
                 "%.3g at the end's KL %.3g",
                 f.R0, f.alpha, f.beta, f.r2, f.value, f.peak * f.peak, gao_reward(&f, f.farthest),
                 f.farthest * f.farthest);
}

/* ---- the run --------------------------------------------------------------------------------------------------- */

/* Rejects options without effect. */
static void refuse_unused(void) {
    const bool critic = has_critic(), ratio = !algos[o.algo].plain, clip = ratio && o.algo != RLOO;
    const bool adaptive = o.controller == KL_ADAPTIVE, a2po = o.algo == A2PO, prime = o.algo == PRIME;
    const OptionUse use[] = {
        {&o.penalty_reward, o.non_eos_penalty, "used only with --non-eos-penalty"},
        {&o.kl, has_reference(), "used only with --kl-coef above 0 or a gold reward"},
        {&o.kl_target, adaptive, "used only with --kl-controller adaptive"},
        {&o.kl_horizon, adaptive, "used only with --kl-controller adaptive"},
        {&o.baseline, o.algo == REINFORCE, "used only by --algo reinforce"},
        {&o.lambda, critic, "used only with a critic, by --algo ppo and a2c"},
        {&o.lambda_critic, critic, "used only with a critic, by --algo ppo and a2c"},
        {&o.length_lambda, critic, "used only with a critic, by --algo ppo and a2c"},
        {&o.gae_level, critic, "used only with a critic, by --algo ppo and a2c"},
        {&o.gae_level, episodes_on(&o.g.episodes), "used only with --tools or --tool-cmd"},
        {&o.turn_gamma, o.gae_level, "used only with --gae-level turn"},
        {&o.credit.llds, o.algo == RLOO,
         "LLDS keeps turns with A >= 0, and --algo rloo alone has one advantage for a turn"},
        {&o.cliprange_value, critic, "used only with a critic, by --algo ppo and a2c"},
        {&o.vf_coef, critic, "used only with a critic, by --algo ppo and a2c"},
        {&o.critic, critic, "used only by --algo ppo and a2c"},
        {&o.critic_rate, o.critic, "used only with --critic"},
        {&o.critic_warmup, o.critic, "used only with --critic"},
        {&o.critic_output, o.critic, "used only with --critic"},
        {&o.cliprange, ratio, "--algo a2c, reinforce and a2po have no importance ratio to clip"},
        {&o.cliprange_high, ratio, "--algo a2c, reinforce and a2po have no importance ratio to clip"},
        {&o.dual_clip, clip, "not used by --algo a2c, reinforce, rloo and a2po"},
        {&o.target_kl, o.epochs > 1, "used only with several passes, --num-ppo-epochs above 1"},
        {&o.beta1, a2po, "used only by --algo a2po"},
        {&o.beta2, a2po, "used only by --algo a2po"},
        {&o.value_samples, a2po, "used only by --algo a2po"},
        {&o.filter_all_incorrect, a2po, "used only by --algo a2po"},
        {&o.kl_coef, !a2po, "--algo a2po has --beta2 instead"},
        {&o.controller, !a2po, "--algo a2po has --beta2 instead"},
        {&o.reference, !a2po, "the reference of --algo a2po is the model of -c, which draws the samples for V"},
        {&o.reward_model, !a2po, "--algo a2po takes rewards of verifiers, which are 0 or 1"},
        {&o.g.reward_group, !a2po, "--algo a2po compares a completion with V, not with others"},
        {&o.gamma, !a2po, "--algo a2po has one reward for a completion"},
        {&o.whiten_rewards, !a2po, "--algo a2po has one reward for a completion"},
        {&o.whiten_advantages, !a2po, "--algo a2po has no advantages to normalise"},
        {&o.aggregation, !a2po || o.entropy_coef != 0 || o.use_kl_loss,
         "--algo a2po has a mean over completions; only --entropy-coef and --use-kl-loss are aggregated"},
        {&o.kl_coef, !prime, "--algo prime has no KL penalty in the reward; --use-kl-loss adds one to the loss"},
        {&o.controller, !prime, "--algo prime has no KL penalty in the reward; --use-kl-loss adds one to the loss"},
        {&o.reward_model, !prime, "--algo prime learns from outcomes from 0 to 1, such as those of verifiers"},
        {&o.whiten_rewards, !prime, "--algo prime has --prime-norm instead"},
        {&o.positive.reward, o.positive.coef > 0, "used only with --positive-nll-coef"},
        {&o.ptx_tokens, o.ptx, "used only with --ptx"},
        {&o.kl_loss_coef, o.use_kl_loss, "used only with --use-kl-loss"},
        {&o.kl_loss_type, o.use_kl_loss, "used only with --use-kl-loss"},
    };
    trainer_check_options(&o.t, options, &o.g.epochs, has_head());
    mixing_check(&o.g.mix, &o.g.input, options, o.t.steps);
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    generation_refuse_unused(&o.g, options, o.g.reward_cmd || o.gold_cmd);
    rollout_dump_check(&o.rollouts, options);
    credit_check(&o.credit, options, &o.g.episodes, !on_policy());
    prime_check(&o.prime, options, prime);
}

/* Fills in the defaults of the algorithm and rejects options that contradict each other. */
static void check_options(void) {
    char name[32];
    option_choice_name(ALGO_CHOICES, o.algo, name, sizeof name);
    if (!o.g.generations) o.g.generations = algos[o.algo].group;
    if (!o.epochs) o.epochs = algos[o.algo].epochs;
    if (o.lambda < 0) o.lambda = algos[o.algo].lambda;
    if (o.lambda_critic < 0) o.lambda_critic = o.lambda;
    if (o.cliprange_high == 0) o.cliprange_high = o.cliprange;
    if (!o.whiten_advantages) o.whiten_advantages = algos[o.algo].whiten ? 2 : 1;
    if (!o.g.reward && o.g.reward_cmd) o.g.reward = "command";
    if (!o.g.reward && !o.reward_model) o.g.reward = "verify";
    refuse_unused();
    if (o.algo == A2PO || o.algo == PRIME) o.kl_coef = 0; /* after its default, no option */
    if (o.gae_level && o.g.episodes.unmasked)
        usage_error("--gae-level turn: the steps are the turns of the model; give --state-masking true");
    if (o.algo == A2PO && episodes_on(&o.g.episodes))
        usage_error("--algo a2po: cannot be combined with --tools and --tool-cmd");
    if (o.g.generations < algos[o.algo].least)
        usage_error("--num-generations: --algo %s compares the completions of a prompt; give at least %d", name,
                    algos[o.algo].least);
    if (o.g.prompts * o.g.generations < 2) usage_error("--num-prompts: a generation needs at least two completions");
    if (o.g.prompts % o.mini_batches)
        usage_error("--num-mini-batches: %lld does not divide the %lld prompts of a generation",
                    (long long)o.mini_batches, (long long)o.g.prompts);
    if (algos[o.algo].plain && !on_policy())
        usage_error("--algo %s has no importance ratio; give one pass and one mini-batch", name);
    if ((o.ptx_coef > 0) != (o.ptx != NULL)) usage_error("--ptx and --ptx-coef require each other");
    if (on_policy() && !algos[o.algo].plain && (option_given(&o.cliprange) || option_given(&o.cliprange_high)))
        warn("every step samples a generation of its own, so the importance ratio is 1 and --cliprange clips nothing; "
             "--num-ppo-epochs or --num-mini-batches above 1 makes several steps of each");
    if (o.algo == RLOO && o.aggregation != AGG_TOKEN_MEAN && o.aggregation != AGG_SEQ_MEAN_TOKEN_MEAN)
        usage_error("--loss-agg-mode: --algo rloo has one ratio per completion: its loss is seq-mean-token-mean");
    if (o.algo == RLOO) o.aggregation = AGG_SEQ_MEAN_TOKEN_MEAN;
    if (o.use_kl_loss && o.kl_loss_type == KL_K1)
        usage_error("--kl-loss-type k1: in the loss its gradient is 0 in expectation; use k2 or k3");
    if (o.use_kl_loss && o.kl_loss_coef == 0) usage_error("--use-kl-loss: --kl-loss-coef is 0; set --kl-loss-coef");
    if (o.gae_level && (o.reward_clip > 0 || o.non_eos_penalty))
        usage_error(
            "--gae-level turn: distributes the reward to the turns; --reward-clip and --non-eos-penalty are of a whole "
            "completion");
    if (o.controller == KL_ADAPTIVE && o.kl_coef == 0)
        usage_error("--kl-controller adaptive: --kl-coef is 0; set --kl-coef");
    if (o.non_eos_penalty && o.missing_eos_penalty > 0)
        usage_error("--non-eos-penalty and --missing-eos-penalty: give only one of them");
}

static void open_arrays(Run *r) {
    const size_t n = (size_t)(o.g.prompts * o.g.generations), tokens = generation_tokens_max(&r->g);
    float **per_completion[] = {&r->score, &r->kl,       &r->gold_score,          &r->greedy,
                                &r->R,     &r->baseline, &r->completion_advantage};
    float **per_token[] = {&r->reward, &r->advantage, &r->value, &r->old_value, &r->target, &r->dvalue};
    for (size_t i = 0; i < sizeof per_completion / sizeof *per_completion; i++)
        *per_completion[i] = (float *)xcalloc(n, sizeof(float));
    for (size_t i = 0; i < sizeof per_token / sizeof *per_token; i++)
        *per_token[i] = (float *)xcalloc(tokens, sizeof(float));
}

static void close_run(Run *r, bool stopped) {
    if (!stopped) second_model_write(&r->critic, o.critic_output);
    if (!stopped && o.algo == PRIME) prime_write(&r->prime);
    trainer_write(&r->t, stopped);
    rollout_dump_close(&r->dump);
    credit_close(&r->credit);
    second_model_close(&r->critic);
    prime_close(&r->prime);
    pretraining_close(&r->ptx);
    if (o.reward_model) reward_model_close(&r->reward_model);
    if (o.gold) reward_model_close(&r->gold);
    rewards_close(&r->gold_reward);
    if (has_reference()) reference_close(&r->reference);
    workspace_free(&r->work, &r->t.model);
    generation_close(&r->g);
    trainer_close(&r->t, stopped);
    free(r->score), free(r->kl), free(r->gold_score), free(r->greedy), free(r->R), free(r->baseline);
    free(r->completion_advantage), free(r->reward), free(r->advantage), free(r->value), free(r->old_value);
    free(r->target), free(r->dvalue), free(r->optimal_value), free(r->left_out);
}

static void save_counters(Run *r) {
    generation_save(&r->g);
    json_object_set_new(r->t.state, "generation", json_integer(r->generation));
    json_object_set_new(r->t.state, "kl_coef", json_real(r->beta.coef));
    json_object_set_new(r->t.state, "ptx_position", json_integer(r->ptx.position));
}

/* The options of the loss. */
static PpoConfig loss_options(void) {
    return (PpoConfig){.plain = algos[o.algo].plain,
                       .cliprange = o.cliprange,
                       .cliprange_high = o.cliprange_high,
                       .dual_clip = o.dual_clip,
                       .cliprange_value = o.cliprange_value,
                       .vf_coef = o.vf_coef,
                       .entropy_coef = o.entropy_coef,
                       .kl_coef = o.use_kl_loss ? o.kl_loss_coef : 0,
                       .kl = (KlEstimator)o.kl_loss_type};
}

static void load_counters(Run *r) {
    const json_t *s = r->t.state;
    if (!r->t.step) return;
    r->beta.coef = state_real(s, "kl_coef");
    r->generation = state_int(s, "generation");
    r->ptx.position = state_int(s, "ptx_position");
}

/* Ends the program if the gold reward could score no completion. */
static void check_gold(const Run *r) {
    Error e;
    int64_t count;
    if (r->gold_reward.count && !prompts_scorable(&r->g.train, &r->gold_reward, &count, &e))
        die("--gold-reward: %s", e.text);
}

/* The optimizer steps of a generation, at most. */
static int64_t steps_of_generation(void) { return o.epochs * o.mini_batches; }

/* Opens the file of --rollouts. */
static void open_rollouts(Run *r) {
    RolloutDump *d = &r->dump;
    rollout_dump_open(d, &o.rollouts, &r->g);
    d->work = &r->work;
    d->reference = has_reference() ? &r->reference.model : NULL;
    d->reference_work = &r->reference.work;
    d->score = score_rollouts;
    d->context = r;
    d->gold = has_gold();
    d->method = o.algo == RLOO ? "rloo" : "ppo";
}

/* Begins the counts of a generation's ratios, if a dump is due after it. */
static void begin_rollouts(Run *r) {
    const int64_t last = r->t.step + o.epochs * o.mini_batches;
    const Generation *g = &r->g;
    PolicyLossConfig c = policy_loss_config(o.algo == RLOO ? POLICY_RLOO : POLICY_GRPO);
    c.epsilon = r->loss.cliprange;
    c.epsilon_high = r->loss.cliprange_high;
    c.delta = r->loss.dual_clip;
    rollout_dump_begin(&r->dump, &c, has_target() ? r->completion_advantage : r->advantage,
                       has_target() ? g->completions : g->offset[g->completions],
                       last < r->t.steps ? last : r->t.steps);
}

/* Writes the dump of the step if it is due. */
static void dump_rollouts(Run *r) {
    const int32_t n = r->g.completions, size = n / (int32_t)o.mini_batches;
    const RolloutValues values = {.advantage = has_target() ? r->completion_advantage : NULL,
                                  .token_advantage = has_target() ? NULL : r->advantage,
                                  .score = r->score,
                                  .gold = has_gold() ? r->gold_score : NULL,
                                  .old_logp = !on_policy(),
                                  .ref_logp = has_reference()};
    rollout_dump_step(&r->dump, n - size, n, &values);
}

/* Rejects judges that compare the completions of a prompt, as --reward-group does. */
static void check_no_comparison(const Rewards *rewards) {
    const unsigned modes = rewards_judge_modes(rewards);
    const bool pairs = modes & 1u << JUDGE_BY_PAIR && strcmp(o.g.judge.opponents, "answer") != 0;
    if (pairs || modes & 1u << JUDGE_BY_GROUP)
        usage_error("--reward judge: --algo a2po compares a completion with V, not with others; give judge=score, "
                    "judge=rubric, or judge=pair with --judge-opponents answer");
}

/* Opens everything that a run needs. */
static void open_run(Run *r) {
    Trainer *t = &r->t;
    Generation *g = &r->g;
    Error e;
    generation_open_data(g, &o.g, t, (uint64_t)o.t.seed, o.g.reward != NULL);
    if (o.algo == A2PO) check_no_comparison(&g->rewards);
    if ((o.gold_reward || o.gold_cmd) &&
        !rewards_open_in(&r->gold_reward, o.gold_reward, o.gold_cmd, o.g.reward_timeout, generation_sandbox(&o.g),
                         (uint64_t)o.t.seed + 1, (int32_t)o.g.max_completion, &e))
        usage_error("--gold-reward, --gold-cmd: %s", e.text);
    if (rewards_models(&r->gold_reward)) usage_error("--gold-reward: give a reward model as --gold, not as a part");
    trainer_open(t, "train_ppo", &o.t, &g->train.shard, has_head());
    g->parts = (int32_t)o.mini_batches;
    generation_open_prompts(g, steps_of_generation());
    generation_check_group(g);
    if (o.algo == A2PO) generation_check_samples(g, "num-value-samples", o.value_samples);
    const char *start = o.t.checkpoint ? o.t.checkpoint : "the model";
    if (has_head() && !o.t.resume) value_head_start(&t->model, &t->file, start);
    generation_open_models(g, NULL);
    if (o.reward_model) {
        generation_open_reward_model(g, &r->reward_model, "reward-model", o.reward_model);
        g->judge = &r->reward_model;
    }
    generation_check_evaluation(g);
    check_gold(r);
    generation_open_code(g, &r->gold_reward);
    if (o.gold) generation_open_reward_model(g, &r->gold, "gold", o.gold);
    if (o.critic)
        critic_open(
            &r->critic, t,
            (SecondModelOpen){
                .path = o.critic, .longest = generation_longest(g), .rows = g->rows, .learning_rate = o.critic_rate});
    second_model_check_output(&r->critic, o.critic_output);
    if (o.algo == PRIME) prime_open(&r->prime, &o.prime, g, o.gamma);
    if (o.ptx && !pretraining_open(&r->ptx, o.ptx, &t->model.config, g->rows, &e)) die("%s", e.text);
    if (o.ptx) trainer_file(t, "ptx", o.ptx, r->ptx.shard.hash);
    const size_t reference = has_reference() ? reference_bytes(t, o.reference, g->rows) : 0;
    generation_plan_cache(g, true);
    const SecondModel *second = o.algo == PRIME ? &r->prime.prm : &r->critic;
    trainer_announce(t, options, g->rows, (int)g->o->slots,
                     reference + second_model_bytes(second, g->rows) + generation_bytes(g));
    trainer_workspace(t, &r->work, g->rows);
    generation_open(g);
    if (has_reference())
        reference_open(&r->reference, t, o.reference, g->rows, generation_longest(g),
                       o.algo == A2PO    ? "--algo a2po"
                       : o.algo == PRIME ? "--algo prime"
                                         : "--kl-coef is not 0");
    open_arrays(r);
    credit_open(&r->credit, &o.credit, g);
    r->loss = loss_options();
    r->positive = o.positive;
    r->beta = (KlControl){(KlControlKind)o.controller, o.kl_target, o.kl_horizon, o.kl_coef};
    if (o.algo == A2PO) {
        r->optimal_value = (double *)xcalloc((size_t)g->train.count, sizeof *r->optimal_value);
        r->left_out = (uint8_t *)xcalloc((size_t)g->train.count, 1);
        g->left_out = r->left_out;
    }
    load_counters(r);
    open_rollouts(r);
}

/* Trains until the run is over. Returns true if a signal stopped it. */
static bool train(Run *r) {
    Trainer *t = &r->t;
    Generation *g = &r->g;
    trainer_schedule(t, g->steps);
    trainer_check_steps(t, o.g.epochs * (double)steps_of_generation(), "--num-prompts");
    rollout_dump_schedule(&r->dump, t->steps);
    Evaluation before = {0}, after = {0};
    if (o.algo == A2PO && t->step) load_values(r);
    else if (o.algo == A2PO) estimate_values(r);
    if (!t->step) {
        generation_show(g, "before");
        if (o.g.eval_on_start && o.g.val.count) before = generation_evaluate(g, "before");
        rollout_dump_step(&r->dump, 0, 0, NULL);
    }

    bool stopped = false;
    while (t->step < t->steps && !stopped) {
        const int64_t first = t->step;
        PpoStats stats = {0};
        trainer_begin_step(t);
        sample_and_score(r);
        score_old_policy(r);
        compute_rewards(r);
        compute_advantages(r);
        begin_rollouts(r);
        const double updating = clock_seconds();
        const double loss = update(r, &stats);
        metrics_set(&t->metrics, "timing_s/update", clock_seconds() - updating);
        const Objective m = objective_of(r);
        log_generation(r, &m, &stats);
        kl_control_update(&r->beta, m.kl, g->completions);
        r->generation++;
        save_counters(r);
        trainer_settled(t);
        if (o.g.val.count && (t->step == t->steps || r->generation % o.g.eval_steps == 0))
            after = generation_evaluate(g, NULL);
        char gold[40] = "";
        if (has_gold()) snprintf(gold, sizeof gold, " | gold %.3f", m.gold);
        trainer_log(t, loss, "score %.3f%s | kl %.3f | length %.1f | %.0f tok/s", m.score, gold, m.kl,
                    (double)g->offset[g->completions] / g->completions,
                    g->offset[g->completions] / (g->gen_seconds + 1e-9));
        dump_rollouts(r);
        generation_forget(g, 0);
        stopped = trainer_should_stop(t, t->step - first);
    }
    rollout_dump_say(&r->dump);
    if (!stopped) {
        generation_show(g, "after");
        if (o.g.val.count) generation_compare(g, &before, &after);
        if (has_gold()) say_overoptimisation(t);
    }
    return stopped;
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    const PpoConfig loss = ppo_config();
    o.t = trainer_defaults(3e-6);
    o.g = generation_defaults();
    o.rollouts = rollout_dump_options();
    o.g.prompts = 64;
    o.g.generations = 0;
    o.g.max_completion = 53;
    o.g.temperature = 0.7;
    o.kl_coef = 0.05;
    o.kl = KL_K1;
    o.kl_loss_coef = 0.001; /* verl's */
    o.kl_loss_type = KL_K3;
    o.kl_target = 6;
    o.kl_horizon = 10000;
    o.penalty_reward = -1;
    o.gamma = o.turn_gamma = 1;
    o.credit = credit_defaults();
    o.lambda = o.lambda_critic = -1;
    o.positive.reward = 1;
    o.prime = prime_options();
    o.value_samples = 8; /* TRL's */
    o.beta1 = 0.5;
    o.beta2 = 1e-3;
    o.filter_all_incorrect = true;
    o.mini_batches = 1;
    o.ptx_tokens = 1024;
    o.cliprange = loss.cliprange;
    o.cliprange_value = loss.cliprange_value;
    o.vf_coef = loss.vf_coef;
    options_parse_all(options, &about, argc, argv);
    check_options();
    program_start();
    trainer_check_files(&o.t, options, o.critic_output ? o.critic_output : o.prime.output);

    open_run(r);
    const bool stopped = train(r);
    close_run(r, stopped);
    return 0;
}
