/* train_grpo.c - group-relative policy optimisation (GRPO): reinforcement learning from verifiable rewards.
 *
 * One generation:
 *   1. sample and score   G completions y_i for each of P prompts from the policy; r_i = sum_k w_k R_k(x, y_i):
 *                         verifiers, format, length, any program                            (rollout.h, rewards.h)
 *   2. old policy         log pi_old before the first update, if there are several, and log ref of a reference
 *   3. advantages         A_i = (r_i - mean of the group) / standard deviation of the group            (advantage.h)
 *   4. update             the policy by the clipped surrogate of A, in one or several steps         (loss/policy.h)
 *
 * Sampling and training share one set of weights in one process. The completions of a group share one copy of their
 * prompt, in sampling and in training. Log-probabilities are computed at the sampling temperature. With one optimizer
 * step per generation, the policy in training is the policy that sampled: the ratio is exactly 1, and differences from
 * the sampler's log-probabilities are due to rounding and logged as sampling/sampling_logp_difference. With several
 * steps, the log-probabilities of pi_old are computed before the first one.
 *
 * With --n-prefix, demonstrations join the samples of their prompts' groups (train/off_policy.h).
 *
 * With --teacher, a second model's distributions at the sampled tokens are learned, beside the reward or, with --reward
 * none, alone (train/distiller.h).
 *
 *     ./train_grpo -c sft.bin -i tasks.shard -j heldout.shard -o grpo.bin --report grpo.html
 */
#include "llmc/base/clock.h"                /* clock_seconds */
#include "llmc/base/error.h"                /* usage_error, xcalloc, die, Error, ... */
#include "llmc/base/options.h"              /* OPTION_REAL, OPTION_CHOICE, OPTION_INT, OPTION_FLAG, ... */
#include "llmc/base/program.h"              /* program_start */
#include "llmc/dist/dist.h"                 /* DIST_FIELDS, dist_sum, dist_max, dist_min, ... */
#include "llmc/dist/grads.h"                /* dist_grads_begin */
#include "llmc/judge/judge_options.h"       /* JUDGE_OPTIONS */
#include "llmc/loss/advantage.h"            /* AdvantageStats, ScaleRewards, SCALE_GROUP, SCALE_NONE, ... */
#include "llmc/loss/advantage_estimators.h" /* ADVANTAGE_RAE, ADVANTAGE_PASS_K, ADVANTAGE_HIERARCHICAL, ... */
#include "llmc/loss/advantage_turns.h"      /* CREDIT_GIGPO, CREDIT_TRAJECTORY */
#include "llmc/loss/clip_histogram.h"       /* clip_histogram_policy */
#include "llmc/loss/covariance.h"           /* CovarianceStats, covariance_choose */
#include "llmc/loss/kl.h"                   /* KL_K3, KlEstimator, KL_CHOICES, KL_K1, ... */
#include "llmc/loss/kl_control.h"           /* KL_ADAPTIVE, KlControl, KL_CONTROL_CHOICES, KL_FIXED, ... */
#include "llmc/loss/policy.h"               /* POLICY_VESPO, POLICY_RLOO, EntropyControl, POLICY_GMPO, ... */
#include "llmc/loss/positive_nll.h"         /* PositiveNll, PositiveBatch, positive_is_right, positive_nll_add, ... */
#include "llmc/loss/scalar.h"               /* LossMetric */
#include "llmc/model/micro_plan.h"          /* MicroPlan */
#include "llmc/model/transformer.h"         /* ModelOutput */
#include "llmc/model/workspace.h"           /* Workspace, workspace_free */
#include "llmc/report/metrics.h"            /* metrics_set, metrics_phase, metrics_warn, Metrics */
#include "llmc/report/run_facts.h"          /* RUN_SAMPLING, RUN_REWARD, RunPhase */
#include "llmc/reward/rewards.h"            /* rewards_add_model, rewards_models */
#include "llmc/rollout/episodes.h"          /* episodes_on, EPISODE_LOSS_OPTIONS, EPISODE_OPTIONS */
#include "llmc/rollout/evaluation.h"        /* Evaluation */
#include "llmc/serve/agent_options.h"       /* AGENT_OPTIONS, agent_refuse_unused */
#include "llmc/train/credit.h"              /* CREDIT_ADVANTAGE_OPTIONS, CREDIT_LOSS_OPTIONS, Credit, ... */
#include "llmc/train/distiller.h"           /* distiller_on, DISTILLER_OPTIONS, DISTILL_EXACT, Distiller, ... */
#include "llmc/train/generation.h"          /* Generation, generation_forward, generation_tokens_max, ... */
#include "llmc/train/generation_options.h"  /* GENERATION_DATA_OPTIONS, GENERATION_EVALUATION_OPTIONS, ... */
#include "llmc/train/generation_report.h"   /* generation_evaluate, generation_log, generation_show, ... */
#include "llmc/train/mixing.h"              /* mixing_check */
#include "llmc/train/off_policy.h"          /* OFF_POLICY_OPTIONS, OffPolicyOptions, off_policy_check, ... */
#include "llmc/train/reference.h"           /* REFERENCE_SYNC_OPTIONS, Reference, ReferenceSync, ... */
#include "llmc/train/roles.h"               /* RoleBaselines, role_baselines_advantages, role_baselines_free, ... */
#include "llmc/train/rollout_dump.h"        /* rollout_dump_step, ROLLOUT_DUMP_OPTIONS, RolloutDump, ... */
#include "llmc/train/teacher.h"             /* teacher_bytes, teacher_guard */
#include "llmc/train/trainer.h"             /* Trainer, state_real, trainer_begin_step, trainer_announce, ... */
#include "llmc/train/trainer_options.h"     /* TRAINER_LORA_OPTIONS, TRAINER_MODEL_OPTIONS, ... */
#if __has_include(<microhttpd.h>)
#include "llmc/serve/agents.h" /* AgentCounts, Agents, agents_attach, agents_close, ... */
#endif

static struct {
    TrainerOptions t;
    GenerationOptions g;
    const char *reference, *reward_model;
    ReferenceSync sync;
    RolloutDumpOptions rollouts;
    DistillerOptions distill;
    CreditOptions credit;
    OffPolicyOptions off_policy;
    int64_t iterations, steps_per_generation, resample;
    double epsilon, epsilon_high, delta, beta, entropy_coef, entropy_target, top_entropy, off_policy_mask;
    double entropy_coef_delta, entropy_coef_min, entropy_coef_max, kl_target, kl_horizon;
    PositiveNll positive; /* the options --positive-nll-coef and --positive-reward */
    PolicyShape shape;    /* the constants of sapo, vespo, dppo, clip_cov and kl_cov */
    int64_t pass_k;
    double rae_decay;
    const char *episode_agents;
    int64_t remains; /* completions of a group that GFPO keeps; 0: all */
    int filter;      /* a GroupFilter */
    int advantage;   /* an AdvantageEstimator */
    int loss, importance, scale, aggregation, kl, kl_in, controller;
    bool kl_bias_correction, mask_truncated, dynamic_sampling, adaptive_entropy;
} o;

static const Option options[] = {
    // clang-format off
    GENERATION_DATA_OPTIONS(o.g),
    OPTION_INT("max-steps", 'x', &o.t.steps, 1, 1e9,
                "number of optimizer steps (default: those of --num-train-epochs)"),
    GENERATION_SAMPLING_OPTIONS(o.g, 2),
    OPTION_FLAG("dynamic-sampling", 0, &o.dynamic_sampling,
                "DAPO: replace groups whose rewards are all equal with groups of new prompts"),
    OPTION_INT ("max-resamples",    0, &o.resample, 1, 1000, "maximum rounds of new prompts per generation (DAPO)"),
    EPISODE_OPTIONS(o.g.episodes),
    EPISODE_LOSS_OPTIONS(o.g.episodes),
    AGENT_OPTIONS(o.g.agent),
    OPTION_GROUP("Reward"),
    OPTION_TEXT  ("reward-model",                0, &o.reward_model, "FILE",
                  "reward model of the part `model` of --reward; several: --reward model=a.bin:1,model=b.bin:0.5"),
    GENERATION_REWARD_OPTIONS(o.g),
    OPTION_CHOICE("scale-rewards",               0, &o.scale,       SCALE_REWARDS_CHOICES,
                  "normalise advantages by the standard deviation of the"),
    OPTION_CHOICE("advantage-estimator",         0, &o.advantage,   ADVANTAGE_CHOICES,
                  "advantages of a group: as in GRPO, or of another method"),
    OPTION_INT   ("pass-k",                      0, &o.pass_k,      1, 4096, "pass_k: completions of which the best counts"),
    OPTION_REAL  ("rae-decay",                   0, &o.rae_decay,   0, 0.999999,
                  "rae: decay of the moving average of a role's rewards, its baseline"),
    OPTION_TEXT  ("episode-agents",              0, &o.episode_agents, "ROLE,...",
                  "hierarchical_grpo: roles that are compared within an episode, such as solver; others: within the group"),
    OPTION_INT   ("num-remains-in-group",        0, &o.remains,     0, 4096,
                  "GFPO: completions of a group that are learned from; 0: all"),
    OPTION_CHOICE("group-filter",                0, &o.filter,      GROUP_FILTER_CHOICES,
                  "GFPO: keep the shortest completions, or those with the highest reward per token"),
    CREDIT_ADVANTAGE_OPTIONS(o.credit),
    OPTION_CHOICE("multi-objective-aggregation", 0, &o.aggregation, "sum_then_normalize|normalize_then_sum",
                  "how to combine several rewards: as in GRPO, or as in GDPO"),
    OPTION_FLAG  ("mask-truncated-completions",  0, &o.mask_truncated,
                  "exclude truncated completions from the loss"),
    OPTION_GROUP("Loss"),
    OPTION_CHOICE("loss-type",                 0, &o.loss,            POLICY_LOSS_CHOICES,
                  "objective"),
    OPTION_CHOICE("importance-sampling-level", 0, &o.importance,      IMPORTANCE_CHOICES,
                  "compute the importance ratio per"),
    OPTION_REAL  ("epsilon",                   0, &o.epsilon,         0, 1e6,
                  "lower clip range (default: that of --loss-type)"),
    OPTION_REAL  ("epsilon-high",              0, &o.epsilon_high,    0, 1e6,
                  "upper clip range (default: --epsilon if given, else that of --loss-type)"),
    OPTION_REAL  ("delta",                     0, &o.delta,           0, 1e6,
                  "upper bound of the ratio if the advantage is negative (dual clip); 0 disables"),
    OPTION_REAL  ("sapo-temperature-pos",      0, &o.shape.sapo_temperature_positive, 1e-6, 1e6,
                  "sapo: temperature if the advantage is positive"),
    OPTION_REAL  ("sapo-temperature-neg",      0, &o.shape.sapo_temperature_negative, 1e-6, 1e6,
                  "sapo: temperature if the advantage is negative"),
    OPTION_REAL  ("vespo-k-pos",               0, &o.shape.vespo_k_positive,      0, 1e6,
                  "vespo: exponent k of the weight if the advantage is positive"),
    OPTION_REAL  ("vespo-lambda-pos",          0, &o.shape.vespo_lambda_positive, 0, 1e6,
                  "vespo: decay lambda of the weight if the advantage is positive"),
    OPTION_REAL  ("vespo-k-neg",               0, &o.shape.vespo_k_negative,      0, 1e6,
                  "vespo: exponent k of the weight if the advantage is negative"),
    OPTION_REAL  ("vespo-lambda-neg",          0, &o.shape.vespo_lambda_negative, 0, 1e6,
                  "vespo: decay lambda of the weight if the advantage is negative"),
    OPTION_REAL  ("kl-tau",                    0, &o.shape.kl_tau,         0, 1e6,
                  "dppo: weight of the squared logarithm of the ratio"),
    OPTION_REAL  ("clip-cov-ratio",            0, &o.shape.clip_cov_ratio, 1e-9, 1,
                  "clip_cov: fraction of the tokens that lose their gradient, at least one"),
    OPTION_REAL  ("clip-cov-lb",               0, &o.shape.clip_cov_low,   -1e6, 1e6,
                  "clip_cov: lower bound of the covariance of these tokens"),
    OPTION_REAL  ("clip-cov-ub",               0, &o.shape.clip_cov_high,  -1e6, 1e6,
                  "clip_cov: upper bound of the covariance of these tokens"),
    OPTION_REAL  ("kl-cov-ratio",              0, &o.shape.kl_cov_ratio,   1e-9, 1,
                  "kl_cov: fraction of the tokens with a KL penalty, at least one"),
    OPTION_REAL  ("ppo-kl-coef",               0, &o.shape.kl_cov_coef,    0, 1e6,
                  "kl_cov: weight of the KL penalty of these tokens"),
    OPTION_REAL  ("beta",                      0, &o.beta,            0, 1e6,
                  "strength of the KL penalty; larger stays closer to the reference, 0 loads no reference"),
    OPTION_CHOICE("kl-estimator",              0, &o.kl,              KL_CHOICES "|exact",
                  "estimator of the KL divergence, or its exact value and gradient; GRPO uses k3"),
    OPTION_CHOICE("kl-in",                     0, &o.kl_in,           "loss|reward",
                  "where to apply the KL penalty"),
    OPTION_FLAG  ("use-bias-correction-kl",    0, &o.kl_bias_correction,
                  "multiply the KL term of the loss by the importance ratio"),
    OPTION_CHOICE("kl-controller",             0, &o.controller,      KL_CONTROL_CHOICES,
                  "keep beta fixed, or adapt it to hold the KL at --kl-target"),
    OPTION_REAL  ("kl-target",                 0, &o.kl_target,       1e-9, 1e9,
                  "adaptive: target KL, in nats per completion"),
    OPTION_REAL  ("kl-horizon",                0, &o.kl_horizon,      1, 1e12,
                  "adaptive: number of completions in which beta may change by at most a fifth"),
    OPTION_TEXT  ("reference",                 0, &o.reference,       "FILE",
                  "reference model; the model of -c if not given"),
    REFERENCE_SYNC_OPTIONS(o.sync),
    OPTION_INT   ("ref-reset-steps",           0, &o.sync.reset,      0, 1e9,
                  "ProRL: every N steps, make the policy the reference and restart the optimizer's moments"),
    OPTION_INT   ("num-iterations",            0, &o.iterations,      1, 1000, "passes over each generation (mu)"),
    OPTION_INT   ("steps-per-generation",      0, &o.steps_per_generation, 1, 65536,
                  "optimizer steps (mini-batches) per pass"),
    OPTION_REAL  ("entropy-coef",              0, &o.entropy_coef,    -10, 10, "weight of the entropy bonus"),
    OPTION_FLAG  ("use-adaptive-entropy",      0, &o.adaptive_entropy,
                  "adapt the weight of the entropy bonus to reach --entropy-target"),
    OPTION_REAL  ("entropy-target",            0, &o.entropy_target,  0, 100, "target entropy, in nats per token"),
    OPTION_REAL  ("entropy-coef-delta",        0, &o.entropy_coef_delta, 0, 10,
                  "adaptive entropy: change of the weight per step"),
    OPTION_REAL  ("entropy-coef-min",          0, &o.entropy_coef_min, -10, 10, "adaptive entropy: lowest weight"),
    OPTION_REAL  ("entropy-coef-max",          0, &o.entropy_coef_max, -10, 10, "adaptive entropy: highest weight"),
    OPTION_REAL  ("top-entropy-quantile",      0, &o.top_entropy,     0.001, 1,
                  "train on this fraction of the tokens, those with the highest entropy"),
    OPTION_REAL  ("off-policy-mask-threshold", 0, &o.off_policy_mask, 0, 1e6,
                  "exclude completions with A < 0 and mean log(sampler / policy) above this; 0 disables"),
    OPTION_REAL  ("positive-nll-coef",         0, &o.positive.coef,   0, 1e6,
                  "VAPO: weight of the negative log-likelihood of right completions, a mean over their tokens"),
    OPTION_REAL  ("positive-reward",           0, &o.positive.reward, -1e9, 1e9,
                  "reward from which a completion is right for --positive-nll-coef"),
    CREDIT_LOSS_OPTIONS(o.credit),
    OFF_POLICY_OPTIONS(o.off_policy),
    DISTILLER_OPTIONS(o.distill),
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
    "-c MODEL -i tasks.shard -o OUT [options]",
    "Trains a model on tasks with verifiable completions, by GRPO and its variants.\n\n"
    "  ./data/make_tasks --task add --digits 2 -o tasks.shard\n"
    "  ./train_grpo -c sft.bin -i tasks.shard -o grpo.bin\n"
    "  ./train_grpo -c sft.bin -i tasks.shard -o grpo.bin --loss-type dapo --epsilon-high 0.28 --dynamic-sampling"};

typedef struct Run {
    Trainer t;
    Reference reference;
    Workspace work;
    Generation g;
    PolicyLossConfig loss;
    EntropyControl entropy;
    KlControl beta;
    RolloutDump dump;
    Distiller distiller; /* with --teacher, or for an exact KL */
    Credit credit;       /* of turns */
    RoleBaselines roles; /* of rae */
#if __has_include(<microhttpd.h>)
    Agents agents; /* of --agent-cmd */
#endif
    bool told;                  /* that requests of programs asked for other settings */
    float *advantage;           /* (completions) */
    float *penalty;             /* (completions) --kl-in reward: beta times the KL */
    uint8_t *keep;              /* (tokens) top-entropy mask */
    uint8_t *chosen;            /* (tokens) those of clip_cov and kl_cov */
    CovarianceStats covariance; /* of the step */
    PositiveNll positive;       /* of the step */
    float *kept_reward;         /* (completions) those of the advantages: NaN for completions that GFPO drops */
    float *log_square;          /* (tokens) optimal_token_baseline: of the old policy */
    float *addition;            /* (tokens) to the advantage of the completion */
    float *token_advantage;     /* (tokens) with it */
    int64_t resampled;          /* groups discarded by dynamic sampling */
    double drawn, drawn_reward; /* completions that were scored, discarded ones too; the sum of their rewards */
    double kl, kl_completions;  /* of this generation: nats over all tokens, and the completions that they belong to */
} Run;

/* ---- 1. sample and score ----------------------------------------------------------------------------------------- */

/* GFPO: kept (G) is the rewards of a group of which the completions that are dropped are NaN. reward: (G) with or without a
 * KL penalty; the filter goes by the rewards without. */
static void filter_group(const Run *r, int32_t group, const float *reward, float *kept) {
    const int32_t G = (int32_t)o.g.generations;
    float plain[G];
    int32_t length[G];
    for (int32_t k = 0; k < G; k++) {
        plain[k] = r->g.scored[group * G + k].reward;
        length[k] = generation_length(&r->g.scored[group * G + k].completion);
    }
    advantage_filter((GroupFilter)o.filter, plain, length, G, o.remains, kept);
    for (int32_t k = 0; k < G; k++)
        if (!isnan(kept[k])) kept[k] = reward[k];
}

static bool group_differs(const Run *r, int32_t group) {
    const Generation *g = &r->g;
    const int32_t G = (int32_t)g->o->generations;
    float reward[G];
    for (int32_t k = 0; k < G; k++) reward[k] = g->scored[group * G + k].reward;
    if (o.remains) filter_group(r, group, reward, reward);
    return advantage_group_differs(reward, G) || credit_group_differs(&r->credit, g, group);
}

/* Samples and scores P groups of completions. Dynamic sampling (DAPO, sec. 3.2) replaces groups whose rewards are all
 * equal, because they have no gradient; such groups of the last round are kept. */
static void sample_and_score(Run *r) {
    Generation *g = &r->g;
    const int32_t P = (int32_t)o.g.prompts, G = (int32_t)o.g.generations;
    const double start = clock_seconds();
    const RunPhase phase = metrics_phase(&r->t.metrics, RUN_SAMPLING);
    g->reward_seconds = 0;
    r->resampled = 0;
    r->drawn = r->drawn_reward = 0;
    for (int32_t kept = 0, round = 0;; round++) {
        generation_sample(g, kept, P - kept);
        const double scoring = clock_seconds();
        metrics_phase(&r->t.metrics, RUN_REWARD);
        generation_score(g, kept, P - kept);
        metrics_phase(&r->t.metrics, RUN_SAMPLING);
        g->reward_seconds += clock_seconds() - scoring;
        for (int32_t i = kept * G; i < P * G; i++) {
            if (isnan(g->scored[i].reward) || g->scored[i].off_policy) continue;
            r->drawn++;
            r->drawn_reward += g->scored[i].reward;
        }
        if (!o.dynamic_sampling) break;
        for (int32_t i = kept; i < P; i++)
            if (group_differs(r, i)) generation_swap_groups(g, i, kept++);
        if (kept == P || round == o.resample) break;
        r->resampled += P - kept;
        generation_forget(g, kept * G);
    }
    g->gen_seconds = clock_seconds() - start - g->reward_seconds;
    metrics_phase(&r->t.metrics, phase);
    generation_flatten(g, o.mask_truncated);
}

/* ---- 2. old policy --------------------------------------------------------------------------------------------- */

/* Whether the reference changes during the run. */
static bool follows(void) { return o.sync.on || o.sync.reset; }

/* Whether the KL penalty is that of the whole distributions. */
static bool exact_kl(void) { return o.beta > 0 && o.kl == KL_K3 + 1; }

/* Whether there is a reward, of --reward, --tool-cmd or --agent-cmd; without one, only the teacher is learned from. */
static bool rewarded(void) { return strcmp(o.g.reward, "none") || o.g.episodes.commands.count || o.g.agent.command; }

/* Whether tokens have baselines of their own. */
static bool token_baseline(void) { return o.advantage == ADVANTAGE_OTB; }

static bool on_policy(void) { return o.iterations * o.steps_per_generation == 1; }

/* Computes log pi_old, unless the policy in training is the one that sampled, and log ref. With --kl-in reward the KL
 * penalty is subtracted from the rewards of the advantages; the metric `reward` is without it, as in TRL's RLOO. */
static void score_old_policy(Run *r) {
    Generation *g = &r->g;
    const int32_t n = g->completions;
    const ModelOutput old = {.logp = g->old_logp, .log_square = token_baseline() ? r->log_square : NULL};
    const ModelOutput reference = {.logp = g->ref_logp};
    if (!on_policy() || token_baseline() || o.g.episodes.unmasked)
        generation_forward(g, &r->t.model, &r->work, 0, n, &old);
    generation_observed_logps(g);
    if (exact_kl()) return;
    if (o.beta > 0) generation_forward(g, &r->reference.model, &r->reference.work, 0, n, &reference);
    if (o.beta > 0 && o.kl_in) {
        r->kl = kl_from_rewards((KlEstimator)o.kl, g->sampler_logp, g->ref_logp, g->offset, n, r->beta.coef, g->reward,
                                r->penalty);
        r->kl_completions = n;
        metrics_set(&r->t.metrics, "kl", r->kl / g->offset[n]);
    }
}

/* ---- 3. advantages ----------------------------------------------------------------------------------------------- */

/* Computes the advantages of a generation. Rewards with a KL penalty are rewards alone again afterwards. */
static AdvantageStats compute_advantages(Run *r) {
    Generation *g = &r->g;
    AdvantageStats stats;
    const bool penalised = o.beta > 0 && o.kl_in && !exact_kl();
    const int64_t G = o.g.generations, P = g->completions / G;
    const float *reward = o.remains ? r->kept_reward : g->reward;
    for (int32_t i = 0; o.remains && i < P; i++) filter_group(r, i, g->reward + i * G, r->kept_reward + i * G);
    if (o.aggregation) {
        const int64_t K = g->rewards.count;
        float *parts = (float *)xmalloc((size_t)(g->completions * K) * sizeof *parts);
        for (int32_t i = 0; i < g->completions; i++)
            memcpy(parts + i * K, g->scored[i].parts, (size_t)K * sizeof *parts);
        advantage_gdpo(parts, g->rewards.weight, penalised ? r->penalty : NULL, P, G, K, r->advantage, &stats);
        free(parts);
    } else if (token_baseline()) {
        const TokenBaseline x = {g->offset, g->old_logp, r->log_square, r->token_advantage, r->addition};
        advantage_tokens(&x, reward, P, G, r->advantage, &stats);
    } else if (o.advantage == ADVANTAGE_RAE) {
        role_baselines_advantages(&r->roles, g, reward, o.rae_decay, r->advantage, &stats);
    } else if (o.advantage == ADVANTAGE_HIERARCHICAL) {
        roles_hierarchical(g, o.episode_agents, reward, r->advantage, &stats);
    } else if (o.advantage) {
        for (int32_t i = 0; i < g->completions; i++)
            if (!advantage_takes((AdvantageEstimator)o.advantage, g->reward[i]))
                die("--advantage-estimator %s: a completion has the reward %g; it takes rewards %s",
                    o.advantage == ADVANTAGE_PASS_K ? "pass_k" : "max_rl", (double)g->reward[i],
                    o.advantage == ADVANTAGE_PASS_K ? "of 0 and 1" : "from 0 on");
        advantage_estimate((AdvantageEstimator)o.advantage, reward, g->offset, P, G, o.pass_k, r->advantage, &stats);
    } else if (o.loss == POLICY_RLOO) advantage_rloo(reward, P, G, false, r->advantage, &stats);
    else advantage_group(reward, P, G, (ScaleRewards)o.scale, r->advantage, &stats);
    credit_advantages(&r->credit, g, (ScaleRewards)o.scale, penalised ? r->penalty : NULL, r->advantage);
    for (int32_t i = 0; penalised && i < g->completions; i++) g->reward[i] = g->scored[i].reward;
    if (penalised || o.remains) advantage_batch_stats(g->reward, g->completions, &stats);
    off_policy_stats(g, &stats);
    return stats;
}

/* ---- 4. update --------------------------------------------------------------------------------------------------- */

/* Reduces *stats over all ranks. Collective. */
static void all_stats(Trainer *t, PolicyStats *stats) {
    dist_sum(&t->dist, DIST_FIELDS(stats->sum));
    dist_max(&t->dist, DIST_FIELDS(stats->max));
    dist_min(&t->dist, DIST_FIELDS(stats->min));
}

/* Whether the loss chooses tokens by covariance. */
static bool by_covariance(void) { return policy_by_covariance((PolicyLossKind)o.loss); }

/* Sets the masks of an optimizer step on completions [first, end), which depend on the policy as it is before the step: a
 * forward pass over all its tokens. Returns the top-entropy mask, NULL if there is none. Collective. */
static const uint8_t *step_masks(Run *r, int32_t first, int32_t end) {
    Generation *g = &r->g;
    const bool quantile = o.top_entropy < 1;
    const ModelOutput all = {.logp = g->logp, .entropy = quantile ? g->entropy : NULL};
    if (!quantile && !by_covariance()) return NULL;
    generation_forward(g, &r->t.model, &r->work, first, end, &all);
    if (quantile)
        policy_entropy_keep(g->entropy, g->offset + first, end - first, g->counts + first, o.top_entropy, r->keep);
    if (by_covariance()) {
        const PolicyBatch step = {.completions = end - first,
                                  .offset = g->offset + first,
                                  .advantage = r->advantage + first,
                                  .token_advantage = token_baseline() ? r->addition : r->credit.addition,
                                  .counts = g->counts + first,
                                  .logp = g->logp,
                                  .old_logp = on_policy() ? NULL : g->old_logp,
                                  .keep = quantile ? r->keep : NULL};
        uint64_t *id = (uint64_t *)xcalloc((size_t)(end - first), sizeof *id);
        for (int32_t i = first; i < end; i++) id[i - first] = g->scored[i].id;
        r->covariance = covariance_choose(&r->loss, &step, id, (uint64_t)o.t.seed, (uint64_t)r->t.step, r->chosen);
        free(id);
    }
    return quantile ? r->keep : NULL;
}

/* One optimizer step on completions [first, end). Returns the loss. Collective. */
static double update_step(Run *r, int32_t first, int32_t end, PolicyStats *stats) {
    Trainer *t = &r->t;
    Generation *g = &r->g;
    PolicyLossConfig c = r->loss;
    c.beta = o.kl_in || exact_kl() ? 0 : r->beta.coef; /* the KL penalty may be in the reward */
    if (exact_kl()) r->distiller.coef = r->beta.coef;
    if (o.adaptive_entropy) c.entropy_coef = entropy_control_coef(&r->entropy);
    const uint8_t *keep = step_masks(r, first, end);
    PolicyNormaliser n = policy_normaliser(g->offset + first, end - first, g->counts + first, keep);
    const PolicyNormaliser all = policy_normaliser(g->offset, g->completions, g->counts, NULL);
    n.window_tokens = all.tokens / (double)o.steps_per_generation;
    double loss = 0;
    int32_t mine, last;
    positive_nll_begin(&r->positive, g->reward + first, g->counts + first, g->offset + first, end - first);
    credit_begin(&r->credit, g, first, end);
    generation_mine(g, first, end, &mine, &last);
    const MicroPlan *plan = generation_plan(g, mine, last);
    dist_grads_begin(&t->grads, plan->micros);
    for (int32_t m = 0; m < plan->micros; m++) {
        const GenerationSlice x = generation_pack(g, plan->first[m], plan->first[m + 1]);
        PolicyBatch b = {.completions = x.count,
                         .offset = x.offset,
                         .advantage = r->advantage + x.first,
                         .counts = x.counts,
                         .logp = x.logp,
                         .old_logp = on_policy() ? NULL : x.old_logp,
                         .ref_logp = c.beta > 0 ? x.ref_logp : NULL,
                         .sampler_logp = x.sampler_logp,
                         .entropy = x.entropy,
                         .keep = keep ? keep + x.at : NULL,
                         .chosen = by_covariance() ? r->chosen + x.at : NULL,
                         .off_policy = g->given.count ? x.off_policy : NULL};
        if (token_baseline()) b.token_advantage = r->addition + x.at;
        /* without an entropy bonus, the sampler's log-probabilities determine dlogp before the forward pass */
        const bool known = c.entropy_coef == 0 && !distiller_on(&r->distiller) &&
                           generation_cached(g, &t->model, x.first, x.first + x.count);
        if (known) {
            memcpy(x.logp, x.sampler_logp, (size_t)x.offset[x.count] * sizeof *x.logp);
            b.entropy = NULL;
        } else if (distiller_on(&r->distiller)) distiller_forward(&r->distiller, g, &x, &r->work, &b);
        else credit_forward(&r->credit, g, &x, &t->model, &r->work, (float)o.g.temperature, NULL);
        credit_give(&r->credit, &x, &b, r->distiller.advantage);
        loss += policy_loss(&c, &n, &b, x.dlogp, x.dentropy, stats);
        loss += credit_llds(&r->credit, &x, &b, n.tokens);
        const PositiveBatch right = {x.count, x.offset, g->reward + x.first, x.counts, x.logp};
        loss += positive_nll_add(&r->positive, &right, x.dlogp);
        if (r->dump.clip) clip_histogram_policy(r->dump.clip, &c, &b);
        const float *dentropy = c.entropy_coef != 0 ? x.dentropy : NULL;
        if (known) {
            generation_forward_backward(g, &x, &t->model, &r->work);
            b.entropy = x.entropy;
            policy_stats_entropy(&b, stats);
        } else if (distiller_on(&r->distiller))
            loss += distiller_backward(&r->distiller, g, &x, &r->work, n.tokens, dentropy);
        else loss += credit_backward(&r->credit, g, &x, &t->model, &r->work, (float)o.g.temperature, dentropy, NULL);
        generation_count_step(g, &t->model, plan->first[m], plan->first[m + 1]);
    }
    loss = dist_total(&t->dist, loss);
    dist_sum(&t->dist, &r->positive.sum, 1);
    all_stats(t, stats);
    distiller_sum(&r->distiller);
    t->trained += (int64_t)(stats->sum.tokens + stats->sum.off_tokens);
    if (c.beta > 0 || exact_kl()) {
        r->kl += exact_kl() ? r->distiller.stats.value : stats->sum.kl;
        r->kl_completions += stats->sum.counted;
    }
    trainer_update(t, loss);
    if (o.distill.teacher.path) teacher_guard(&r->distiller.teacher, &r->distiller.stats);
    distiller_follow(&r->distiller);
    reference_sync(&r->reference, &o.sync);
    if (o.adaptive_entropy && stats->sum.kept > 0)
        entropy_control_update(&r->entropy, stats->sum.kept_entropy / stats->sum.kept);
    return loss;
}

/* ---- programs that draw the completions ----------------------------------------------------------------------- */

#if __has_include(<microhttpd.h>)

/* Opens the server of --agent-cmd, whose programs draw the completions. */
static void open_agents(Run *r) {
    Error e;
    Trainer *t = &r->t;
    Generation *g = &r->g;
    if (!o.g.agent.command) return;
    if (!agents_open(&r->agents, &o.g.agent, &t->model, &t->text, (int)o.g.slots, (int32_t)o.g.max_completion,
                     (uint64_t)o.t.seed, !strcmp(o.g.reward, "none"), &e))
        die("%s", e.text);
    agents_attach(&r->agents, &g->engine);
    if (t->dist.rank == 0 && !o.t.quiet)
        fprintf(stderr, "agents  http://%s, %d programs at once, trajectories of at most %lld tokens\n",
                r->agents.http.address, r->agents.workers, (long long)o.g.max_completion);
}

static void close_agents(Run *r) { agents_close(&r->agents); }

/* Logs what the programs of the generation did, over all ranks, and begins to count again. Warns about failures, and the
 * first time that programs set how the policy is sampled. Collective. */
static void log_agents(Run *r) {
    Metrics *m = &r->t.metrics;
    AgentCounts *c = &r->agents.counts;
    double sum[] = {(double)c->runs,     (double)c->failures,   (double)c->timeouts, (double)c->requests,
                    (double)c->branches, (double)c->overridden, c->seconds};
    if (!o.g.agent.command) return;
    dist_sum(&r->t.dist, sum, sizeof sum / sizeof *sum);
    metrics_set(m, "agents/failures", sum[1]);
    metrics_set(m, "agents/timeouts", sum[2]);
    metrics_set(m, "agents/requests", sum[3] / sum[0]);
    metrics_set(m, "agents/branches", sum[4] / sum[0]);
    metrics_set(m, "agents/overridden_settings", sum[5]);
    metrics_set(m, "timing_s/agent", sum[6] / sum[0]);
    if (sum[1] > 0)
        metrics_warn(m, "%.0f of %.0f runs of a program failed, and their completions have no reward: %s", sum[1],
                     sum[0], r->agents.why.text[0] ? r->agents.why.text : "on another rank");
    if (sum[5] > 0 && !r->told)
        metrics_warn(
            m,
            "--agent-cmd: %.0f requests asked for a temperature, top_p, top_k, min_p or seed of their own; the "
            "trainer's are used",
            sum[5]);
    r->told = r->told || sum[5] > 0;
    *c = (AgentCounts){0};
}

#else

static void open_agents(Run *r) {
    (void)r;
    if (o.g.agent.command)
        die("--agent-cmd: this program was built without libmicrohttpd; install libmicrohttpd-dev and build it again");
}

static void close_agents(Run *r) { (void)r; }

static void log_agents(Run *r) { (void)r; }

#endif

/* ---- logging --------------------------------------------------------------------------------------------------- */

/* Whether a token has an advantage, or is one of a right completion whose likelihood is in the loss. */
static bool any_advantage(const Run *r) {
    for (int32_t t = 0; token_baseline() && t < r->g.offset[r->g.completions]; t++)
        if (fabs((double)r->token_advantage[t]) > 1e-6) return true;
    for (int32_t i = 0; o.positive.coef > 0 && i < r->g.completions; i++)
        if (positive_is_right(&r->positive, r->g.reward[i], r->g.counts[i])) return true;
    return credit_any(&r->credit, &r->g, r->advantage);
}

/* Logs the metrics of a generation under TRL's names. Warnings repeat for every generation to which they apply: nothing
 * is learned from it. */
static void log_rewards(Run *r, const AdvantageStats *a) {
    Metrics *m = &r->t.metrics;
    if (!rewarded()) {
        generation_log(&r->g);
        return;
    }
    metrics_set(m, "reward", a->reward);
    metrics_set(m, "reward_std", a->reward_std);
    metrics_set(m, "frac_reward_zero_std", a->frac_reward_zero_std);
    if (o.dynamic_sampling) {
        metrics_set(m, "dynamic_sampling/resampled_groups", (double)r->resampled);
        metrics_set(m, "dynamic_sampling/reward", r->drawn > 0 ? r->drawn_reward / r->drawn : NAN);
    }
    generation_log(&r->g);
    off_policy_log(&r->g);
    if (o.advantage == ADVANTAGE_RAE) role_baselines_log(&r->roles, m);
    if (o.advantage == ADVANTAGE_HIERARCHICAL) roles_warn_absent(&r->g, o.episode_agents, m);
    log_agents(r);
    if (a->frac_reward_zero_std == 1 && !o.distill.teacher.path && !any_advantage(r))
        metrics_warn(m, "the rewards of every group are all equal: no gradient");
    if (isnan(a->reward)) metrics_warn(m, "no completion could be scored");
}

static void log_policy(Run *r, const PolicyStats *stats) {
    distiller_log(&r->distiller);
    LossMetric metric[POLICY_METRICS];
    const int n = policy_metrics(&r->loss, stats, metric);
    for (int i = 0; i < n; i++) metrics_set(&r->t.metrics, metric[i].name, metric[i].value);
    if (o.adaptive_entropy) metrics_set(&r->t.metrics, "entropy_coef", r->entropy.coef);
    if (o.positive.coef > 0) metrics_set(&r->t.metrics, "positive_nll", r->positive.sum / r->positive.tokens);
    if (by_covariance()) {
        metrics_set(&r->t.metrics, "covariance/mean", r->covariance.mean);
        metrics_set(&r->t.metrics, "covariance/chosen",
                    (double)r->covariance.chosen / fmax((double)r->covariance.tokens, 1));
    }
    credit_log(&r->credit, &r->g);
    if (on_policy()) generation_check_sampler(&r->g, stats->max.sampler_gap);
}

/* Logs the KL of the generation under the names of train_ppo if it is in the reward or if beta adapts to it. */
static void log_kl(Run *r, double reward) {
    Metrics *m = &r->t.metrics;
    const double kl = r->kl / r->kl_completions;
    if (!(o.beta > 0) || (!o.kl_in && o.controller == KL_FIXED)) return;
    metrics_set(m, "objective/kl", kl);
    metrics_set(m, "objective/kl_coef", r->beta.coef);
    if (!o.kl_in) return;
    metrics_set(m, "objective/non_score_reward", 0 - r->beta.coef * kl);
    metrics_set(m, "objective/rlhf_reward", reward - r->beta.coef * kl);
}

/* ---- the run --------------------------------------------------------------------------------------------------- */

/* The defaults of the loss, overridden by the command line. */
static PolicyLossConfig loss_options(void) {
    PolicyLossConfig c = policy_loss_config((PolicyLossKind)o.loss);
    if (option_given(&o.importance)) c.importance = (Importance)o.importance;
    c.shape = o.shape;
    if (o.epsilon >= 0) {
        c.epsilon = o.epsilon;
        if (o.loss != POLICY_CISPO) c.epsilon_high = o.epsilon;
    }
    if (o.epsilon_high >= 0) c.epsilon_high = o.epsilon_high;
    c.delta = o.delta;
    c.beta = o.beta;
    c.kl = exact_kl() ? KL_K3 : (KlEstimator)o.kl;
    c.kl_bias_correction = o.kl_bias_correction;
    c.entropy_coef = o.entropy_coef;
    c.off_policy_mask = o.off_policy_mask;
    c.max_completion_length = (double)o.g.max_completion;
    c.off_policy = o.off_policy.ratio;
    return c;
}

static EntropyControl entropy_options(void) {
    EntropyControl e = entropy_control(o.entropy_coef);
    e.target = o.entropy_target;
    e.delta = o.entropy_coef_delta;
    e.low = o.entropy_coef_min;
    e.high = o.entropy_coef_max;
    return e;
}

static void save_counters(Run *r) {
    generation_save(&r->g);
    if (o.advantage == ADVANTAGE_RAE) role_baselines_save(&r->roles, r->t.state);
    json_object_set_new(r->t.state, "entropy_coef", json_real(r->entropy.coef));
    json_object_set_new(r->t.state, "kl_coef", json_real(r->beta.coef));
    if (isfinite(r->entropy.last)) json_object_set_new(r->t.state, "entropy_last", json_real(r->entropy.last));
}

static void load_counters(Run *r) {
    const json_t *s = r->t.state;
    if (!r->t.step) return;
    r->entropy.coef = state_real(s, "entropy_coef");
    if (o.advantage == ADVANTAGE_RAE) role_baselines_load(&r->roles, s);
    if (json_object_get(s, "kl_coef")) r->beta.coef = state_real(s, "kl_coef");
    if (json_object_get(s, "entropy_last")) r->entropy.last = state_real(s, "entropy_last");
}

/* The optimizer steps of a generation. */
static int64_t steps_of_generation(void) { return o.iterations * o.steps_per_generation; }

/* Opens everything that a run needs. */
static void open_run(Run *r) {
    Trainer *t = &r->t;
    Generation *g = &r->g;
    Error e;
    generation_open_data(g, &o.g, t, (uint64_t)o.t.seed, rewarded());
    if (o.reward_model && !rewards_add_model(&g->rewards, &e)) usage_error("--reward-model: %s", e.text);
    if (o.g.agent.command && rewards_models(&g->rewards))
        usage_error("--reward model: cannot be combined with --agent-cmd, whose prompts are not those of the data");
    trainer_open(t, "train_grpo", &o.t, &g->train.shard, false);
    g->parts = (int32_t)o.steps_per_generation;
    generation_open_prompts(g, steps_of_generation());
    generation_check_group(g);
    generation_open_models(g, o.reward_model);
    generation_check_evaluation(g);
    off_policy_open(&o.off_policy, g);
    r->loss = loss_options();
    r->entropy = entropy_options();
    r->positive = o.positive;
    r->beta = (KlControl){(KlControlKind)o.controller, o.kl_target, o.kl_horizon, o.beta};
    const size_t reference = o.beta > 0 ? reference_bytes(t, o.reference, g->rows) : 0;
    distiller_open(&r->distiller, g, &o.distill);
    if (exact_kl()) t->teacher = &t->model.config;
    generation_plan_cache(g, !distiller_on(&r->distiller) && !exact_kl());
    trainer_announce(t, options, g->rows, (int)g->o->slots,
                     reference + generation_bytes(g) +
                         teacher_bytes(&r->distiller.teacher, distiller_rows(&r->distiller, g->rows)));
    trainer_workspace(t, &r->work, g->rows);
    generation_open(g);
    open_agents(r);
    if (o.beta > 0 && follows())
        reference_open_following(&r->reference, t, o.reference, g->rows, generation_longest(g),
                                 o.sync.on ? "--sync-ref-model" : "--ref-reset-steps");
    else if (o.beta > 0)
        reference_open(&r->reference, t, o.reference, g->rows, generation_longest(g), "--beta is not 0");
    distiller_begin(&r->distiller, g->rows);
    if (exact_kl()) distiller_penalise(&r->distiller, &r->reference, g->rows, (float)o.g.temperature, o.kl_in != 0);
    r->penalty = (float *)xcalloc((size_t)(o.g.prompts * o.g.generations), sizeof(float));
    r->kept_reward = (float *)xcalloc((size_t)(o.g.prompts * o.g.generations), sizeof(float));
    r->advantage = (float *)xcalloc((size_t)(o.g.prompts * o.g.generations), sizeof(float));
    r->keep = (uint8_t *)xcalloc(generation_tokens_max(g), 1);
    r->chosen = (uint8_t *)xcalloc(generation_tokens_max(g), 1);
    float **const tokens[] = {&r->log_square, &r->addition, &r->token_advantage};
    for (int i = 0; i < 3; i++) *tokens[i] = (float *)xcalloc(generation_tokens_max(g), sizeof **tokens[i]);
    credit_open(&r->credit, &o.credit, g);
    load_counters(r);
    rollout_dump_open(&r->dump, &o.rollouts, g);
    r->dump.work = &r->work;
    r->dump.reference = o.beta > 0 ? &r->reference.model : NULL;
    r->dump.reference_work = &r->reference.work;
}

/* Trains until the run is over. Returns true if a signal stopped it. */
static bool train(Run *r) {
    Trainer *t = &r->t;
    Generation *g = &r->g;
    const int64_t steps = steps_of_generation();
    trainer_schedule(t, g->steps);
    trainer_check_steps(t, o.g.epochs * (double)steps, "--num-prompts");
    rollout_dump_schedule(&r->dump, t->steps);
    Evaluation before = {0}, after = {0};
    if (!t->step) {
        generation_show(g, "before");
        if (o.g.eval_on_start && o.g.val.count) before = generation_evaluate(g, "before");
        rollout_dump_step(&r->dump, 0, 0, NULL);
    }

    bool stopped = false;
    for (int64_t generation = t->step / steps; t->step < t->steps && !stopped; generation++) {
        const int64_t first = t->step;
        trainer_begin_step(t);
        r->kl = r->kl_completions = 0;
        sample_and_score(r);
        score_old_policy(r);
        const AdvantageStats advantages = compute_advantages(r);
        const RolloutValues values = {.advantage = r->advantage,
                                      .token_advantage = token_baseline() ? r->token_advantage : r->credit.advantage,
                                      .old_logp = !on_policy(),
                                      .ref_logp = o.beta > 0 && !exact_kl()};
        int32_t dumped = 0; /* the first completion of the last step */
        for (int64_t i = 0; i < steps && t->step < t->steps; i++) {
            const int32_t size = g->completions / (int32_t)o.steps_per_generation;
            int32_t drawn;
            const double tokens = (double)generation_drawn(g, &drawn);
            const int32_t at = (int32_t)(i % o.steps_per_generation) * size;
            PolicyStats stats = policy_stats();
            if (i) trainer_begin_step(t);
            const bool last = t->step + 1 == t->steps, ends = last || i == steps - 1; /* the generation */
            rollout_dump_begin(&r->dump, &r->loss, r->advantage + at, size, ends ? t->step + 1 : -1);
            dumped = at;
            const double start = clock_seconds();
            const double loss = update_step(r, at, at + size, &stats);
            metrics_set(&t->metrics, "timing_s/update", clock_seconds() - start);
            const double divergence = r->distiller.stats.value / r->distiller.stats.targets;
            if (!i) log_rewards(r, &advantages);
            log_policy(r, &stats);
            if (ends) log_kl(r, advantages.reward);
            if (g->engine.turns && rewarded() && ends)
                credit_log_right(&r->credit, g, &t->model, &r->work, on_policy() ? g->logp : g->old_logp, r->advantage);
            if (ends) {
                kl_control_update(&r->beta, r->kl / r->kl_completions, r->g.completions);
                save_counters(r);
                trainer_settled(t);
            }
            if (o.g.val.count && (last || (i == steps - 1 && (generation + 1) % o.g.eval_steps == 0)))
                after = generation_evaluate(g, NULL);
            trainer_log(t, loss, "%s %.3f | length %.1f | entropy %.3f | %.0f tok/s",
                        rewarded() ? "reward" : "divergence", rewarded() ? advantages.reward : divergence,
                        tokens / drawn, stats.max.has_entropy ? stats.sum.entropy / fmax(stats.sum.tokens, 1) : 0,
                        tokens / (g->gen_seconds + 1e-9));
        }
        rollout_dump_step(&r->dump, dumped, dumped + g->completions / (int32_t)o.steps_per_generation, &values);
        generation_forget(g, 0);
        stopped = trainer_should_stop(t, t->step - first);
    }
    rollout_dump_say(&r->dump);
    if (!stopped) {
        generation_show(g, "after");
        if (o.g.val.count) generation_compare(g, &before, &after);
    }
    return stopped;
}

/* Whether the loss takes --importance-sampling-level, or has this level in any case. */
static bool takes_importance(void) {
    switch (o.loss) {
    case POLICY_GSPO:
    case POLICY_LUSPO: return o.importance == IMPORTANCE_SEQUENCE;
    case POLICY_GMPO:
    case POLICY_DPPO:
    case POLICY_CLIP_COV:
    case POLICY_KL_COV: return o.importance == IMPORTANCE_TOKEN;
    case POLICY_VESPO:
    case POLICY_RLOO: return false;
    default: return true;
    }
}

/* Rejects combinations of distillation and an exact KL with what has no meaning beside them. */
static void check_distillation(void) {
    const bool teacher = o.distill.teacher.path != NULL, tokens = teacher && o.distill.estimator != DISTILL_EXACT;
    if (!rewarded() && !teacher)
        usage_error("--reward none: nothing is learned without --teacher, --tool-cmd or --agent-cmd");
    if (!rewarded() && (o.reward_model || o.g.reward_cmd))
        usage_error("--reward none: cannot be combined with --reward-cmd and --reward-model");
    if (!rewarded() && (o.dynamic_sampling || o.aggregation))
        usage_error("--reward none: there are no rewards for --dynamic-sampling or --multi-objective-aggregation");
    if (teacher && exact_kl()) usage_error("--kl-estimator exact: cannot be combined with --teacher; give k3");
    if ((tokens || (exact_kl() && o.kl_in)) && (o.loss == POLICY_VESPO || o.loss == POLICY_GMPO))
        usage_error("--loss-type vespo and gmpo: have one advantage for all tokens of a completion, which %s",
                    tokens ? "--distill-estimator sampled and minillm do not"
                           : "--kl-estimator exact in the reward has not");
    if ((tokens || (exact_kl() && o.kl_in)) && token_baseline())
        usage_error(
            "--advantage-estimator optimal_token_baseline: cannot be combined with %s, which adds to the advantages of "
            "tokens, too",
            tokens ? "--distill-estimator sampled and minillm" : "--kl-estimator exact in the reward");
    if ((tokens || (exact_kl() && o.kl_in)) && by_covariance())
        usage_error(
            "--loss-type clip_cov and kl_cov: choose tokens by their advantages before the step, and those of %s "
            "are known only in it",
            tokens ? "--distill-estimator sampled and minillm" : "--kl-estimator exact in the reward");
}

/* Rejects combinations of the credit of turns with what has one advantage for a whole completion, or sets it in another
 * way. */
static void check_credit(void) {
    const bool level = o.credit.level != CREDIT_TRAJECTORY;
    credit_check(&o.credit, options, &o.g.episodes, !on_policy());
    if (level && (o.loss == POLICY_VESPO || o.loss == POLICY_GMPO || o.loss == POLICY_RLOO))
        usage_error(
            "--advantage-level: --loss-type vespo, gmpo and rloo have one advantage for all tokens of a completion");
    if (level && (o.aggregation || o.advantage))
        usage_error("--advantage-level: cannot be combined with --advantage-estimator and "
                    "--multi-objective-aggregation normalize_then_sum");
    if (level && !rewarded()) usage_error("--advantage-level: there are no rewards (--reward none)");
    if (o.credit.observation > 0 && (o.distill.teacher.path || exact_kl()))
        usage_error("--observation-ce: cannot be combined with --teacher and --kl-estimator exact");
    if (o.credit.level == CREDIT_GIGPO) o.scale = o.credit.norm ? SCALE_NONE : SCALE_GROUP;
}

/* Rejects what demonstrations among the samples cannot be combined with. */
static void check_off_policy(void) {
    const struct {
        bool given;
        const char *what;
    } others[] = {
        {episodes_on(&o.g.episodes), "--tools and --tool-cmd: a demonstration is a text, without results of calls"},
        {o.g.agent.command != NULL, "--agent-cmd, whose programs draw the completions"},
        {!rewarded(), "--reward none: there is no advantage"},
        {o.distill.teacher.path != NULL, "--teacher"},
        {exact_kl(), "--kl-estimator exact; give k3"},
        {o.beta > 0 && o.kl_in, "--kl-in reward, which needs samples of the policy; give --kl-in loss"},
        {by_covariance(), "--loss-type clip_cov and kl_cov, which choose among the tokens that the policy drew"},
        {token_baseline(), "--advantage-estimator optimal_token_baseline"},
        {o.advantage == ADVANTAGE_RAE, "--advantage-estimator rae, whose baseline is that of samples"},
        {o.remains > 0, "--num-remains-in-group"},
        {o.top_entropy < 1, "--top-entropy-quantile"},
        {o.positive.coef > 0, "--positive-nll-coef"},
        {o.credit.llds > 0, "--llds-coef"},
    };
    off_policy_check(&o.off_policy, options, o.g.generations);
    for (size_t i = 0; o.off_policy.most && i < sizeof others / sizeof *others; i++)
        if (others[i].given) usage_error("--n-prefix: cannot be combined with %s", others[i].what);
}

/* Rejects what completions that programs draw cannot be combined with. */
static void check_agents(void) {
    agent_refuse_unused(&o.g.agent, options);
    if (!o.g.agent.command) return;
    if (episodes_on(&o.g.episodes))
        usage_error("--agent-cmd: cannot be combined with --tools and --tool-cmd: the program calls its tools itself");
    if (o.distill.teacher.path || o.reward_model)
        usage_error(
            "--agent-cmd: cannot be combined with --teacher and --reward-model, which read the prompts of the data");
    if (o.g.repetition_penalty != 1) usage_error("--agent-cmd: cannot be combined with --repetition-penalty");
    if (o.g.max_completion < 2) usage_error("--max-completion-length: a trajectory needs at least 2 tokens");
}

/* Rejects options without effect, and warns about those that have none as long as every step has a new generation. */
static void check_options(void) {
    const bool cispo = o.loss == POLICY_CISPO, soft = o.loss == POLICY_SAPO || o.loss == POLICY_VESPO;
    const bool gmpo = o.loss == POLICY_GMPO, kl = o.beta > 0, dppo = o.loss == POLICY_DPPO;
    const bool clip_cov = o.loss == POLICY_CLIP_COV, kl_cov = o.loss == POLICY_KL_COV;
    const OptionUse use[] = {
        {&o.epsilon, !soft && !cispo && !kl_cov, "not used by --loss-type sapo, vespo, cispo and kl_cov"},
        {&o.epsilon_high, !soft && !kl_cov, "not used by --loss-type sapo, vespo and kl_cov"},
        {&o.delta, !soft && !cispo && !gmpo && !dppo && !kl_cov && !clip_cov,
         "not used by --loss-type sapo, vespo, cispo, gmpo, dppo, clip_cov and kl_cov"},
        {&o.importance, takes_importance(), "this --loss-type has a level of its own"},
        {&o.scale, o.loss != POLICY_RLOO && !o.aggregation && !o.advantage && o.credit.level != CREDIT_GIGPO,
         "not used by --loss-type rloo, --multi-objective-aggregation normalize_then_sum and other advantages; "
         "--advantage-level gigpo has --gigpo-norm"},
        {&o.advantage, o.loss != POLICY_RLOO && !o.aggregation,
         "not used by --loss-type rloo and --multi-objective-aggregation normalize_then_sum"},
        {&o.pass_k, o.advantage == ADVANTAGE_PASS_K, "used only by --advantage-estimator pass_k"},
        {&o.episode_agents, o.advantage == ADVANTAGE_HIERARCHICAL,
         "used only by --advantage-estimator hierarchical_grpo"},
        {&o.rae_decay, o.advantage == ADVANTAGE_RAE, "used only by --advantage-estimator rae"},
        {&o.dynamic_sampling, o.advantage != ADVANTAGE_RAE,
         "not used by --advantage-estimator rae, by which a group with equal rewards has a gradient"},
        {&o.kl, kl, "used only with --beta above 0"},
        {&o.kl_in, kl, "used only with --beta above 0"},
        {&o.kl_bias_correction, kl && !o.kl_in && !gmpo && !exact_kl(),
         "used only with --beta above 0 and --kl-in loss, and not by --loss-type gmpo"},
        {&o.reference, kl, "used only with --beta above 0"},
        {&o.entropy_target, o.adaptive_entropy, "used only with --use-adaptive-entropy"},
        {&o.resample, o.dynamic_sampling, "used only with --dynamic-sampling"},
        {&o.entropy_coef_delta, o.adaptive_entropy, "used only with --use-adaptive-entropy"},
        {&o.entropy_coef_min, o.adaptive_entropy, "used only with --use-adaptive-entropy"},
        {&o.entropy_coef_max, o.adaptive_entropy, "used only with --use-adaptive-entropy"},
        {&o.shape.sapo_temperature_positive, o.loss == POLICY_SAPO, "used only with --loss-type sapo"},
        {&o.shape.sapo_temperature_negative, o.loss == POLICY_SAPO, "used only with --loss-type sapo"},
        {&o.shape.vespo_k_positive, o.loss == POLICY_VESPO, "used only with --loss-type vespo"},
        {&o.shape.vespo_lambda_positive, o.loss == POLICY_VESPO, "used only with --loss-type vespo"},
        {&o.shape.vespo_k_negative, o.loss == POLICY_VESPO, "used only with --loss-type vespo"},
        {&o.shape.vespo_lambda_negative, o.loss == POLICY_VESPO, "used only with --loss-type vespo"},
        {&o.remains, rewarded() && !o.aggregation && o.credit.level == CREDIT_TRAJECTORY,
         "not used by --reward none, --multi-objective-aggregation normalize_then_sum and --advantage-level"},
        {&o.filter, o.remains > 0, "used only with --num-remains-in-group"},
        {&o.positive.coef, rewarded(), "there are no rewards (--reward none)"},
        {&o.positive.reward, o.positive.coef > 0, "used only with --positive-nll-coef"},
        {&o.shape.kl_tau, dppo && !on_policy(),
         "used only with --loss-type dppo and several steps of a generation: --num-iterations or --steps-per-generation"},
        {&o.shape.clip_cov_ratio, clip_cov, "used only with --loss-type clip_cov"},
        {&o.shape.clip_cov_low, clip_cov, "used only with --loss-type clip_cov"},
        {&o.shape.clip_cov_high, clip_cov, "used only with --loss-type clip_cov"},
        {&o.shape.kl_cov_ratio, kl_cov, "used only with --loss-type kl_cov"},
        {&o.shape.kl_cov_coef, kl_cov, "used only with --loss-type kl_cov"},
        {&o.controller, kl, "used only with --beta above 0"},
        {&o.kl_target, o.controller == KL_ADAPTIVE, "used only with --kl-controller adaptive"},
        {&o.kl_horizon, o.controller == KL_ADAPTIVE, "used only with --kl-controller adaptive"},
        {&o.sync.on, kl, "used only with --beta above 0"},
        {&o.sync.reset, kl, "used only with --beta above 0"},
    };
    trainer_check_options(&o.t, options, &o.g.epochs, false);
    distiller_check(&o.distill, options, o.g.temperature);
    check_distillation();
    check_agents();
    check_credit();
    check_off_policy();
    mixing_check(&o.g.mix, &o.g.input, options, o.t.steps);
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    generation_refuse_unused(&o.g, options, o.g.reward_cmd != NULL);
    rollout_dump_check(&o.rollouts, options);
    if (o.advantage == ADVANTAGE_PASS_K && o.pass_k > o.g.generations)
        usage_error("--pass-k: %lld is more than the %lld completions of a group", (long long)o.pass_k,
                    (long long)o.g.generations);
    if (o.advantage == ADVANTAGE_HIERARCHICAL && !o.episode_agents)
        usage_error(
            "--advantage-estimator hierarchical_grpo: give --episode-agents, the roles that are compared within an "
            "episode, such as solver");
    if (o.remains && (o.remains < 2 || o.remains >= o.g.generations))
        usage_error("--num-remains-in-group: %lld must be at least 2 and less than the %lld completions of a group",
                    (long long)o.remains, (long long)o.g.generations);
    if (o.remains && o.advantage == ADVANTAGE_PASS_K && o.pass_k > o.remains)
        usage_error("--pass-k: %lld is more than the %lld completions that --num-remains-in-group keeps",
                    (long long)o.pass_k, (long long)o.remains);
    if (kl && o.kl_in && !exact_kl() && (o.advantage == ADVANTAGE_PASS_K || o.advantage == ADVANTAGE_MAX_RL))
        usage_error(
            "--kl-in reward: --advantage-estimator pass_k and max_rl take the rewards alone; give --kl-in loss");
    if (token_baseline() && (o.loss == POLICY_VESPO || gmpo))
        usage_error(
            "--advantage-estimator optimal_token_baseline: --loss-type vespo, gmpo and rloo have one advantage for all "
            "tokens of a completion");
    reference_sync_check(&o.sync, o.t.lora_rank > 0 || o.t.adapter, options);
    distiller_check_ema(&o.distill, o.t.lora_rank > 0 || o.t.adapter,
                        o.sync.on      ? "--sync-ref-model"
                        : o.sync.reset ? "--ref-reset-steps"
                                       : NULL);
    if (o.entropy_coef_min > o.entropy_coef_max)
        usage_error("--entropy-coef-min: %g is above --entropy-coef-max %g", o.entropy_coef_min, o.entropy_coef_max);
    if (kl && o.kl == KL_K1 && !o.kl_in && (gmpo || !o.kl_bias_correction))
        usage_error("--kl-estimator k1: its gradient in the loss is 0 in expectation; give k2 or k3, --kl-in reward%s",
                    gmpo ? "" : " or --use-bias-correction-kl");
    if (o.shape.clip_cov_low >= o.shape.clip_cov_high)
        usage_error("--clip-cov-lb: %g is not below --clip-cov-ub %g", o.shape.clip_cov_low, o.shape.clip_cov_high);
    if (kl_cov && on_policy())
        usage_error(
            "--loss-type kl_cov: the ratio is 1 in the only step of a generation, and its KL penalty has no gradient; "
            "give --num-iterations or --steps-per-generation");
    if (on_policy() &&
        (option_given(&o.epsilon) || option_given(&o.delta) || (option_given(&o.epsilon_high) && !cispo)))
        warn("every step samples a generation of its own, so the importance ratio is 1 and nothing is clipped; "
             "--num-iterations or --steps-per-generation above 1 makes several steps of each");
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    o.t = trainer_defaults(1e-6);
    o.g = generation_defaults();
    o.resample = 10;
    o.pass_k = 4;
    o.rae_decay = 0.95;
    o.epsilon = o.epsilon_high = -1;
    o.loss = POLICY_DAPO;
    o.kl = KL_K3;
    o.kl_bias_correction = true;
    o.iterations = o.steps_per_generation = 1;
    const EntropyControl entropy = entropy_control(0);
    o.entropy_target = entropy.target;
    o.entropy_coef_delta = entropy.delta;
    o.entropy_coef_min = entropy.low;
    o.entropy_coef_max = entropy.high;
    o.shape = policy_loss_config(POLICY_GRPO).shape;
    o.sync = reference_sync_options();
    o.rollouts = rollout_dump_options();
    o.distill = distiller_options();
    o.credit = credit_defaults();
    o.off_policy = off_policy_options();
    o.kl_target = 6;
    o.kl_horizon = 10000;
    o.top_entropy = 1;
    o.positive.reward = 1;
    options_parse_all(options, &about, argc, argv);
    if (!o.g.reward) o.g.reward = o.reward_model ? "model" : o.g.reward_cmd ? "command" : "verify";
    check_options();
    if (o.g.prompts % o.steps_per_generation)
        usage_error("--steps-per-generation: %lld does not divide the %lld prompts of a generation",
                    (long long)o.steps_per_generation, (long long)o.g.prompts);
    program_start();
    trainer_check_files(&o.t, options, NULL);

    open_run(r);
    const bool stopped = train(r);
    rollout_dump_close(&r->dump);
    trainer_write(&r->t, stopped);
    distiller_close(&r->distiller);
    credit_close(&r->credit);
    role_baselines_free(&r->roles);
    close_agents(r);
    if (o.beta > 0) reference_close(&r->reference);
    workspace_free(&r->work, &r->t.model);
    generation_close(&r->g);
    trainer_close(&r->t, stopped);
    free(r->advantage), free(r->penalty), free(r->keep), free(r->chosen);
    free(r->kept_reward), free(r->log_square), free(r->addition), free(r->token_advantage);
    return 0;
}
