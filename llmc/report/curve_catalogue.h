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
    const char *title; /* NULL: use the metric's own name */
    const char *about; /* description */
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
    {"loss", CURVES_OPTIMISATION, "Loss", "the objective that is minimised", "loss", S | L | H},
    {"mean_token_accuracy", CURVES_OPTIMISATION, "Token accuracy",
     "target tokens that are the model's most likely token", "share of tokens", P | S | H},
    {"*perplexity*", CURVES_OPTIMISATION, "Perplexity", "exp of the loss", "perplexity", S | L | H},
    {"loss/kl_avg", CURVES_POLICY, "KL in the loss", "mean of the estimate per token", "nats", S | L},
    {"*loss*", CURVES_OPTIMISATION, NULL, "", "loss", S | L},
    {"grad_norm", CURVES_OPTIMISATION, "Gradient norm", "L2 norm before clipping", "norm", S | Z | L},
    {"learning_rate", CURVES_OPTIMISATION, "Learning rate", "", "rate", Z},
    {"lr", CURVES_OPTIMISATION, "Learning rate", "", "rate", Z},
    {"grad/*", CURVES_OPTIMISATION, NULL, "", "value", Z},
    {"rewards/accuracies", CURVES_REWARD, "Preference accuracy", "pairs whose chosen answer scores higher",
     "share of pairs", P | S | H},
    {"*accuracy*", CURVES_ACCURACY, "Accuracy", "completions that are right", "share", P | S | H},
    {"ece", CURVES_ACCURACY, "Calibration error", "mean gap between predicted probability and accuracy", "share", P},
    {"*pass@*", CURVES_ACCURACY, NULL, "prompts solved by at least one of k samples", "share of prompts", P | S},
    {"*majority@*", CURVES_ACCURACY, NULL, "prompts whose most common answer is right", "share of prompts", P | S},
    {"*best_of*", CURVES_ACCURACY, NULL, "prompts whose best-scored sample is right", "share of prompts", P | S},
    {"reward", CURVES_REWARD, "Reward", "mean over all completions of a step", "reward", S | H},
    {"mean_reward", CURVES_REWARD, "Reward", "mean score of chosen and rejected completions", "reward", S | H},
    {"dynamic_sampling/reward", CURVES_REWARD, "Reward of all drawn groups", "also of those that were replaced",
     "reward", S},
    {"reward_std", CURVES_REWARD, "Standard deviation of rewards", "over all completions of a step", "reward", S | Z},
    {"frac_reward_zero_std", CURVES_REWARD, "Groups without variance",
     "all rewards of the group are equal: no gradient", "share of samples", P | S},
    {"*filter*", CURVES_REWARD, NULL, "effect of dynamic sampling", "value", S | Z},
    {"rewards/*/mean", CURVES_REWARD, NULL, "one component of the reward, mean", "reward", S},
    {"rewards/*/std", CURVES_REWARD, NULL, "one component of the reward, standard deviation", "reward", S | Z},
    {"rewards/margins", CURVES_REWARD, "Margin", "chosen minus rejected", "reward", S | H},
    {"margin", CURVES_REWARD, "Margin", "chosen minus rejected", "reward", S | H},
    {"rewards/*", CURVES_REWARD, NULL, "implicit reward", "reward", S},
    {"objective/scores", CURVES_REWARD, "Score", "the optimised reward, before the KL penalty", "score", S | H},
    {"objective/gold", CURVES_REWARD, "Gold reward", "the actual goal, which is not optimised", "score", S | H},
    {"objective/rlhf_reward", CURVES_REWARD, "Score minus KL penalty", "the policy's objective", "reward", S},
    {"objective/non_score_reward", CURVES_REWARD, "KL penalty", "mean over completions", "reward", S},
    {"objective/scores_std", CURVES_REWARD, "Standard deviation of scores", "over a batch of completions", "score",
     S | Z},
    {"objective/kl", CURVES_POLICY, "KL to the reference", "the policy's distance from the reference",
     "nats per completion", S | Z | L | H},
    {"objective/kl_coef", CURVES_POLICY, "KL coefficient", "weight of the KL penalty", "beta", Z},
    {"critic/vf_explained_var", CURVES_REWARD, "Explained variance",
     "fraction of the returns' variance that the critic explains", "share", S},
    {"critic/*", CURVES_REWARD, NULL, "", "value", S},
    {"objective/*score*", CURVES_REWARD, NULL, "mean over a batch", "reward", S},
    {"objective/*reward*", CURVES_REWARD, NULL, "mean over a batch", "reward", S},
    {"completions/mean_length", CURVES_COMPLETIONS, "Length", "mean over all completions", "tokens", S | Z | H},
    {"completions/mean_terminated_length", CURVES_COMPLETIONS, "Length if terminated",
     "mean over completions that end with a stop token", "tokens", S | Z},
    {"completions/clipped_ratio", CURVES_COMPLETIONS, "Truncated", "completions that reach the maximum length",
     "share of completions", P | S},
    {"*length*", CURVES_COMPLETIONS, NULL, "", "tokens", S | Z},
    {"completions/*", CURVES_COMPLETIONS, NULL, "", "value", S},
    {"kl", CURVES_POLICY, "KL to the reference", "the policy's distance from the reference", "nats per token",
     S | Z | L | H},
    {"entropy", CURVES_POLICY, "Entropy", "of the next token's distribution", "nats per token", S | Z | H},
    {"*entropy*", CURVES_POLICY, NULL, "", "nats", S},
    {"*kl*", CURVES_POLICY, NULL, "", "nats", S | L},
    {"*clip_ratio/region_mean", CURVES_POLICY, "Clipped ratios", "tokens whose ratio is clipped at either bound",
     "share of tokens", P | S},
    {"*clip_ratio/low_mean", CURVES_POLICY, "Clipped low", "ratio below the lower bound, negative advantage",
     "share of tokens", P | S},
    {"*clip_ratio/high_mean", CURVES_POLICY, "Clipped high", "ratio above the upper bound, positive advantage",
     "share of tokens", P | S},
    {"*clip*", CURVES_POLICY, NULL, "", "share", P | S},
    {"logps/*", CURVES_POLICY, NULL, "log-probability of the completions", "nats", S},
    {"logits/*", CURVES_POLICY, NULL, "", "logit", S},
    {"sampling/sampling_logp_difference/mean", CURVES_POLICY, "Sampler vs. trainer",
     "difference of log-probabilities, from rounding only", "nats", S | Z | L},
    {"sampling/importance_sampling_ratio/mean", CURVES_POLICY, "Importance ratio",
     "trainer's probability divided by the sampler's", "ratio", S},
    {"sampling/*", CURVES_POLICY, NULL, "", "value", S | L},
    {"onpolicy/*", CURVES_POLICY, NULL, "", "value", S | L},
    {"step_time", CURVES_SPEED, "Time per step", "", "seconds", S | Z},
    {"*tokens_per_second*", CURVES_SPEED, "Speed", "", "tokens/s", S | Z},
    {"*per_second*", CURVES_SPEED, NULL, "", "per second", S | Z},
    {"*share_of_peak*", CURVES_SPEED, "Share of the peak", "of the peak measured on this machine", "share", P | S},
    {"*mfu*", CURVES_SPEED, "Fraction of peak", "of the machine's peak FLOP/s", "share", P | S},
    {"tim*/*", CURVES_SPEED, NULL, "", "seconds", S | Z},
    {"*_time", CURVES_SPEED, NULL, "", "seconds", S | Z},
    {"*seconds*", CURVES_SPEED, NULL, "", "seconds", S | Z},
    {"*memory*", CURVES_SPEED, NULL, "", "value", Z},
    {"perf/*", CURVES_SPEED, NULL, "", "value", S | Z},
    {"num_tokens", CURVES_SPEED, "Tokens", "of prompts and completions since the start", "tokens", Z},
    {"num_trained_tokens", CURVES_SPEED, "Tokens with a loss", "since the start, in all passes", "tokens", Z},
    {"epoch", CURVES_SPEED, "Epochs", "passes over the data", "epochs", Z},
    {"data/*", CURVES_SPEED, NULL, "", "value", S},
    {"*", CURVES_OTHER, NULL, "", "value", S},
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
