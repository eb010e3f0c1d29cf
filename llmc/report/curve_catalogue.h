/* curve_catalogue.h - group, title, description and unit of the metrics that a report describes.
 *
 * It lists the names that TRL's trainers and this project's log. A name without a row of its own is described by the
 * pattern of a whole family, or else shown in the last group under its own name.
 *
 *     int rank;
 *     const CurveInfo *info = curve_info("grad_norm", &rank);  // "Gradient norm", in CURVES_OPTIMISATION
 */
#ifndef LLMC_REPORT_CURVE_CATALOGUE_H
#define LLMC_REPORT_CURVE_CATALOGUE_H

#include <fnmatch.h>
#include <stddef.h>

typedef enum {
    CURVES_ACCURACY,
    CURVES_REWARD,
    CURVES_POLICY,
    CURVES_COMPLETIONS,
    CURVES_OPTIMISATION,
    CURVES_SPEED,
    CURVES_OTHER,
    CURVE_GROUPS
} CurveGroup;

enum { CURVE_SHARE = 1, CURVE_ZERO = 2, CURVE_LOG = 4, CURVE_SMOOTH = 8, CURVE_HEADLINE = 16 };

typedef struct CurveInfo {
    const char *pattern; /* fnmatch(3) pattern of the name without "eval_" */
    CurveGroup group;
    const char *title; /* a * is the part that the only * of the pattern stands for; NULL: made of the metric's name */
    const char *about; /* a sentence that says what the chart shows */
    const char *unit;
    int flags;
} CurveInfo;

/* The heading of a group. */
static inline const char *curve_group_name(CurveGroup g) {
    static const char *const name[CURVE_GROUPS] = {"Accuracy",     "Reward",         "Policy", "Completions",
                                                   "Optimisation", "Speed and data", "Other"};
    return name[g];
}

/* The first row whose pattern matches is used; the last row matches every name. Within a group, the rows are in display
 * order. */
#define S CURVE_SMOOTH
#define Z CURVE_ZERO
#define L CURVE_LOG
#define P CURVE_SHARE
#define H CURVE_HEADLINE
static const CurveInfo curve_catalogue[] = {
    {"loss", CURVES_OPTIMISATION, "Loss", "The objective that training minimises.", "loss", S | L | H},
    {"mean_token_accuracy", CURVES_OPTIMISATION, "Token accuracy",
     "How many target tokens are the model's most likely token.", "share of tokens", P | S | H},
    {"*perplexity*", CURVES_OPTIMISATION, "Perplexity", "The exponential of the loss per token.", "perplexity",
     S | L | H},
    {"loss/kl_avg", CURVES_POLICY, "KL in the loss", "The mean estimate of the KL divergence per token.", "nats",
     S | L},
    {"loss/policy_avg", CURVES_OPTIMISATION, "Policy loss", "The policy's part of the loss.", "loss", S | L},
    {"loss/value_avg", CURVES_OPTIMISATION, "Value loss", "The critic's squared error.", "loss", S | L},
    {"reward_model/dpo_loss", CURVES_OPTIMISATION, "Loss of the process reward model",
     "The cross-entropy of the outcomes under the implicit process reward model.", "nats", S | L},
    {"nll_loss", CURVES_OPTIMISATION, "Negative log-likelihood",
     "The mean over the tokens of the chosen answers, with TPO of the gold answers.", "nats", S | L},
    {"policy_loss", CURVES_OPTIMISATION, "Policy loss", "The loss without the entropy bonus.", "loss", S | L},
    {"*loss*", CURVES_OPTIMISATION, NULL, "One part of the loss.", "loss", S | L},
    {"grad_norm", CURVES_OPTIMISATION, "Gradient norm", "The L2 norm of the gradient before clipping.", "norm",
     S | Z | L},
    {"learning_rate", CURVES_OPTIMISATION, "Learning rate", "The step size of the optimizer.", "rate", Z},
    {"lr", CURVES_OPTIMISATION, "Learning rate", "The step size of the optimizer.", "rate", Z},
    {"grad/nan_count", CURVES_OPTIMISATION, "Skipped steps",
     "How many steps so far were skipped because a value was not finite.", "steps", Z},
    {"grad/*", CURVES_OPTIMISATION, NULL, "A statistic of the gradient.", "value", Z},
    {"rewards/accuracies", CURVES_REWARD, "Preference accuracy",
     "How many pairs have a chosen answer that scores higher.", "share of pairs", P | S | H},
    {"filter_accuracy/kept", CURVES_REWARD, "Prompts kept by --filter-accuracy",
     "How many prompts have a mean outcome within the bounds.", "share of prompts", P | S},
    {"*accuracy*", CURVES_ACCURACY, "Accuracy", "How many answers are right.", "share", P | S | H},
    {"ece", CURVES_ACCURACY, "Calibration error", "The mean gap between predicted probability and accuracy.", "share",
     P},
    {"*pass@*", CURVES_ACCURACY, NULL, "How many prompts are solved by at least one of k samples.", "share of prompts",
     P | S},
    {"*majority@*", CURVES_ACCURACY, NULL, "How many prompts have a right answer as their most common one.",
     "share of prompts", P | S},
    {"*best_of*", CURVES_ACCURACY, NULL, "How many prompts have a right answer as their best-scored one.",
     "share of prompts", P | S},
    {"objective/scores", CURVES_REWARD, "Score", "The optimised reward, before the KL penalty.", "score", S | H},
    {"objective/gold", CURVES_REWARD, "Gold reward", "The actual goal, which is not optimised.", "score", S | H},
    {"reward", CURVES_REWARD, "Reward", "The mean reward over all completions of a step.", "reward", S | H},
    {"mean_reward", CURVES_REWARD, "Reward", "The mean score of chosen and rejected completions.", "reward", S | H},
    {"min_reward", CURVES_REWARD, "Lowest reward", "The lowest score of a completion.", "reward", S},
    {"max_reward", CURVES_REWARD, "Highest reward", "The highest score of a completion.", "reward", S},
    {"dynamic_sampling/reward", CURVES_REWARD, "Reward of all drawn groups",
     "The mean reward, also of the groups that were replaced.", "reward", S},
    {"off_policy/reward", CURVES_REWARD, "Reward of demonstrations", "The mean reward of a step's demonstrations.",
     "reward", S},
    {"role/*/reward", CURVES_REWARD, "Reward of *", "The mean reward of the completions with this role.", "reward", S},
    {"role/*/baseline", CURVES_REWARD, "Baseline of *", "The moving average of this role's rewards.", "reward", S},
    {"reward_std", CURVES_REWARD, "Standard deviation of rewards",
     "How much the rewards of a step's completions differ.", "reward", S | Z},
    {"frac_reward_zero_std", CURVES_REWARD, "Groups without variance",
     "How many completions are in groups whose rewards are all equal, which gives no gradient.", "share of samples",
     P | S},
    {"*filter*", CURVES_REWARD, NULL, "An effect of dynamic sampling.", "value", S | Z},
    {"rewards/*/mean", CURVES_REWARD, "Reward: *", "The mean of one component of the reward.", "reward", S},
    {"rewards/*/std", CURVES_REWARD, "Standard deviation: *", "The standard deviation of one component of the reward.",
     "reward", S | Z},
    {"rewards/margins", CURVES_REWARD, "Margin", "By how much the chosen answer's reward exceeds the rejected one's.",
     "reward", S | H},
    {"margin", CURVES_REWARD, "Margin", "By how much the chosen answer's score exceeds the rejected one's.", "reward",
     S | H},
    {"rewards/chosen", CURVES_REWARD, "Reward of chosen answers", "The mean implicit reward of the chosen answers.",
     "reward", S},
    {"rewards/rejected", CURVES_REWARD, "Reward of rejected answers",
     "The mean implicit reward of the rejected answers.", "reward", S},
    {"rewards/*", CURVES_REWARD, NULL, "A mean implicit reward.", "reward", S},
    {"objective/rlhf_reward", CURVES_REWARD, "Score minus KL penalty", "The policy's objective.", "reward", S},
    {"objective/non_score_reward", CURVES_REWARD, "KL penalty", "The mean KL penalty of a completion.", "reward", S},
    {"objective/scores_std", CURVES_REWARD, "Standard deviation of scores",
     "How much the scores of a batch of completions differ.", "score", S | Z},
    {"objective/kl", CURVES_POLICY, "KL to the reference", "How far the policy is from the reference.",
     "nats per completion", S | Z | L | H},
    {"objective/kl_coef", CURVES_POLICY, "KL coefficient", "The weight of the KL penalty.", "beta", Z},
    {"critic/vf_explained_var", CURVES_REWARD, "Explained variance",
     "How much of the returns' variance the critic explains.", "share", S},
    {"critic/values/mean", CURVES_REWARD, "Value", "The mean return that the critic expects.", "return", S},
    {"critic/returns/mean", CURVES_REWARD, "Return", "The mean return that the critic learns.", "return", S},
    {"critic/*", CURVES_REWARD, NULL, "A statistic of the critic.", "value", S},
    {"reward_model/dpo_acc_abs*", CURVES_REWARD, "Signs of the process reward model",
     "How many completions have a summed process reward whose sign agrees with the outcome.", "share of completions",
     P | S},
    {"reward_model/dpo_acc*", CURVES_REWARD, "Order of the process reward model",
     "How many pairs of completions of a prompt have process rewards in the order of their outcomes.", "share of pairs",
     P | S},
    {"reward_model/reward", CURVES_REWARD, "Process reward", "The mean sum of the process rewards of a completion.",
     "reward", S},
    {"reward_model/raw_reward", CURVES_REWARD, "Log-ratio of the process reward model",
     "The mean log-probability of a completion under the process reward model minus that under the reference.", "nats",
     S},
    {"reward_model/grad_norm", CURVES_OPTIMISATION, "Gradient norm of the process reward model",
     "The L2 norm of its gradient before clipping.", "norm", S | Z | L},
    {"objective/*score*", CURVES_REWARD, NULL, "A mean over a batch of completions.", "reward", S},
    {"objective/*reward*", CURVES_REWARD, NULL, "A mean over a batch of completions.", "reward", S},
    {"tools/*/calls", CURVES_COMPLETIONS, "Calls of *", "How many calls of this tool were made.", "calls", S | Z},
    {"tools/*/latency_*", CURVES_COMPLETIONS, NULL, "How long a call of this tool takes.", "seconds", S | Z},
    {"tools/call_frequency", CURVES_COMPLETIONS, "Calls", "The mean number of calls in a completion.", "calls", S | Z},
    {"tools/failure_frequency", CURVES_COMPLETIONS, "Failed calls",
     "How many calls were not run or were answered by an error.", "share of calls", P | S},
    {"tools/*", CURVES_COMPLETIONS, "Tools: *", "How often this happened with tools in a step.", "number", S | Z},
    {"turns/mean", CURVES_COMPLETIONS, "Turns", "The number of turns of a completion.", "turns", S | Z},
    {"turns/*", CURVES_COMPLETIONS, NULL, "The number of turns of a completion.", "turns", S | Z},
    {"stop/*", CURVES_COMPLETIONS, "Ended: *", "How many completions ended for this reason.", "share of completions",
     P | S},
    {"rollout/observed_tokens", CURVES_COMPLETIONS, "Observed tokens",
     "How many tokens of results the completions of a step were given.", "tokens", S | Z},
    {"rollout/parked_share", CURVES_COMPLETIONS, "Waiting for results",
     "For how much of the time slots held a completion that waited for a result.", "share of the time", P | S},
    {"code/seconds_*", CURVES_COMPLETIONS, NULL, "How long a completion's program runs.", "seconds", Z},
    {"code/*", CURVES_COMPLETIONS, "Programs: *", "How many completions' programs, or tests, in a step.", "number",
     S | Z},
    {"completions/mean_length", CURVES_COMPLETIONS, "Length", "The mean length of all completions.", "tokens",
     S | Z | H},
    {"completions/mean_terminated_length", CURVES_COMPLETIONS, "Length if terminated",
     "The mean length of the completions that end with a stop token.", "tokens", S | Z},
    {"val/num_eos_tokens", CURVES_COMPLETIONS, "Completions that ended",
     "How many completions of a step end with a stop token.", "completions", S | Z},
    {"off_policy/tokens", CURVES_COMPLETIONS, "Tokens of demonstrations",
     "How many of a step's tokens are those of demonstrations.", "share of tokens", P | S},
    {"role/*/share", CURVES_COMPLETIONS, "Share of *", "How many completions have this role.", "share of completions",
     P | S},
    {"completions/clipped_ratio", CURVES_COMPLETIONS, "Truncated", "How many completions reach the maximum length.",
     "share of completions", P | S},
    {"*length*", CURVES_COMPLETIONS, NULL, "A length of completions.", "tokens", S | Z},
    {"completions/*", CURVES_COMPLETIONS, NULL, "A statistic of the completions.", "value", S},
    {"distill/divergence", CURVES_POLICY, "Divergence from the teacher",
     "The divergence that distillation minimises, over the vocabulary, or over a teacher's table.", "per token",
     S | Z | L | H},
    {"distill/reverse_kl", CURVES_POLICY, "Reverse KL to the teacher",
     "KL(student || teacher) over the vocabulary, or over a teacher's table.", "nats per token", S | Z | L},
    {"distill/forward_kl", CURVES_POLICY, "Forward KL to the teacher",
     "KL(teacher || student) over the vocabulary, or over a teacher's table.", "nats per token", S | Z | L},
    {"distill/agreement", CURVES_POLICY, "Agreement with the teacher",
     "At how many targets both models have the same most likely token.", "share of tokens", P | S},
    {"distill/nll", CURVES_POLICY, "Negative log-likelihood", "Of the targets under the student.", "nats per token",
     S | L},
    {"distill/on_policy_share", CURVES_POLICY, "On-policy share",
     "How many steps so far trained on the student's samples.", "share", P},
    {"teacher_kl", CURVES_POLICY, "Sampled KL to the teacher",
     "The mean difference of the log-probabilities of student and teacher at the student's samples.", "nats per token",
     S},
    {"teacher/listed_mass", CURVES_POLICY, "Listed tokens",
     "The teacher's probability of the tokens that its table lists.", "probability", P},
    {"teacher/logp", CURVES_POLICY, "Teacher's log-probability", "Of the targets under the teacher.", "nats per token",
     S},
    {"kl", CURVES_POLICY, "KL to the reference", "How far the policy is from the reference.", "nats per token",
     S | Z | L | H},
    {"entropy", CURVES_POLICY, "Entropy", "How uncertain the model is of the next token.", "nats per token", S | Z | H},
    {"objective/entropy", CURVES_POLICY, "Entropy of completions",
     "The mean negative log-probability of a completion when it was sampled.", "nats per completion", S | Z},
    {"policy/entropy_avg", CURVES_POLICY, "Entropy", "How uncertain the policy is of the next token.", "nats per token",
     S | Z},
    {"policy/approxkl_avg", CURVES_POLICY, "KL of the update",
     "The mean of (log rho)^2 / 2 between the policy and the one that sampled.", "nats per token", S | L},
    {"entropy_coef", CURVES_POLICY, "Entropy coefficient", "The weight of the entropy bonus.", "weight", Z},
    {"*entropy*", CURVES_POLICY, NULL, "An entropy of the next token's distribution.", "nats", S},
    {"*kl*", CURVES_POLICY, NULL, "An estimate of a KL divergence.", "nats", S | L},
    {"*clip_ratio/region_mean", CURVES_POLICY, "Clipped ratios",
     "How many tokens have a ratio that is clipped at either bound.", "share of tokens", P | S},
    {"policy/clipfrac_avg", CURVES_POLICY, "Clipped ratios", "How many tokens have no gradient because of the clip.",
     "share of tokens", P | S},
    {"val/clipfrac_avg", CURVES_POLICY, "Clipped values", "How many tokens have a value that is clipped.",
     "share of tokens", P | S},
    {"*clip_ratio/low_mean", CURVES_POLICY, "Clipped low",
     "How many tokens have a negative advantage and a ratio below the lower bound.", "share of tokens", P | S},
    {"*clip_ratio/high_mean", CURVES_POLICY, "Clipped high",
     "How many tokens have a positive advantage and a ratio above the upper bound.", "share of tokens", P | S},
    {"*clip*", CURVES_POLICY, NULL, "How much is clipped.", "share", P | S},
    {"logps/*", CURVES_POLICY, "Log-probability: *", "The mean log-probability of these completions.", "nats", S},
    {"logratios/*", CURVES_POLICY, "Log-ratio: *",
     "The mean log-probability of these completions minus the reference's.", "nats", S},
    {"logits/*", CURVES_POLICY, "Logits: *", "A mean of logits.", "logit", S},
    {"sampling/sampling_logp_difference/mean", CURVES_POLICY, "Sampler vs. trainer",
     "The mean difference between the log-probabilities of sampler and trainer, which should be rounding only.", "nats",
     S | Z | L},
    {"sampling/importance_sampling_ratio/mean", CURVES_POLICY, "Importance ratio",
     "The trainer's probability divided by the sampler's.", "ratio", S},
    {"sampling/*", CURVES_POLICY, NULL, "A difference between sampler and trainer.", "value", S | L},
    {"onpolicy/max_abs_ratio_minus_1", CURVES_POLICY, "Largest change of a ratio",
     "The largest distance from 1 of the ratio between the policy and the one that sampled.", "ratio", S | L},
    {"onpolicy/*", CURVES_POLICY, NULL, "How far the policy is from the one that sampled.", "value", S | L},
    {"val/ratio", CURVES_POLICY, "Ratio", "The mean ratio between the policy and the one that sampled.", "ratio", S},
    {"val/ratio_var", CURVES_POLICY, "Variance of the ratio",
     "The variance over tokens of the ratio between the policy and the one that sampled.", "ratio squared", S | Z | L},
    {"ratio/mean", CURVES_POLICY, "Mean ratio", "The mean ratio between the policy and the one that sampled.", "ratio",
     S},
    {"ratio/*", CURVES_POLICY, NULL, "A statistic of the ratio between the policy and the one that sampled.", "ratio",
     S},
    {"off_policy/prob", CURVES_POLICY, "Probability of demonstrations",
     "The policy's mean probability of the tokens of demonstrations.", "probability", P | S},
    {"off_policy/ratio_mean", CURVES_POLICY, "Ratio of demonstrations",
     "The mean ratio by which the tokens of demonstrations are weighted.", "ratio", S},
    {"step_time", CURVES_SPEED, "Time per step", "The time of a step, without validation and reports.", "seconds",
     S | Z},
    {"*tokens_per_second*", CURVES_SPEED, "Speed", "How many tokens are processed in a second.", "tokens/s", S | Z},
    {"*per_second*", CURVES_SPEED, NULL, "How much is processed in a second.", "per second", S | Z},
    {"*share_of_peak*", CURVES_SPEED, "Share of the peak",
     "The speed of a step as a share of the peak measured on this machine.", "share", P | S},
    {"*mfu*", CURVES_SPEED, "Fraction of peak", "The speed of a step as a share of the peak that the vendor gives.",
     "share", P | S},
    {"tim*/gen", CURVES_SPEED, "Time of sampling", "The time in which the completions of a step were drawn.", "seconds",
     S | Z},
    {"tim*/reward", CURVES_SPEED, "Time of rewards", "The time in which the completions of a step were scored.",
     "seconds", S | Z},
    {"tim*/update", CURVES_SPEED, "Time of the update", "The time of the passes and the optimizer in a step.",
     "seconds", S | Z},
    {"tim*/*", CURVES_SPEED, NULL, "The time of one part of a step.", "seconds", S | Z},
    {"*_time", CURVES_SPEED, NULL, "A time.", "seconds", S | Z},
    {"*seconds*", CURVES_SPEED, NULL, "A time.", "seconds", S | Z},
    {"*memory*", CURVES_SPEED, NULL, "An amount of memory.", "value", Z},
    {"perf/*", CURVES_SPEED, NULL, "A measure of the speed.", "value", S | Z},
    {"num_tokens", CURVES_SPEED, "Tokens", "How many tokens of prompts and completions were processed since the start.",
     "tokens", Z},
    {"num_trained_tokens", CURVES_SPEED, "Tokens with a loss",
     "How many tokens had a loss since the start, in all passes.", "tokens", Z},
    {"epoch", CURVES_SPEED, "Epochs", "How many passes over the data have been made.", "epochs", Z},
    {"episode", CURVES_SPEED, "Episodes", "How many completions were drawn since the start.", "completions", Z},
    {"eps", CURVES_SPEED, "Episodes per second", "How many completions are drawn and trained on in a second.",
     "per second", S | Z},
    {"mix/*/share", CURVES_SPEED, NULL, "The share of this file in the records drawn so far.", "share of records", P},
    {"mix/*/epoch", CURVES_SPEED, NULL, "How many passes over this file have been made.", "epochs", Z},
    {"data/*", CURVES_SPEED, NULL, "A statistic of the data.", "value", S},
    {"*", CURVES_OTHER, NULL, "The value of this metric at each step.", "value", S},
};
#undef S
#undef Z
#undef L
#undef P
#undef H

/* Returns the catalogue's row for a metric's name without "eval_". *rank is its index. */
static inline const CurveInfo *curve_info(const char *key, int *rank) {
    for (int i = 0;; i++)
        if (!fnmatch(curve_catalogue[i].pattern, key, 0)) {
            *rank = i;
            return &curve_catalogue[i];
        }
}

#endif
