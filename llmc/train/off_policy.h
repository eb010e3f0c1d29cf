/* off_policy.h - demonstrations in the groups of train_grpo (LUFFY: Yan et al. 2025, 2504.14945): options, opening, metrics.
 *
 * With --n-prefix N, up to N demonstrations of a prompt (../rollout/off_policy.h) replace as many of its G samples. They are
 * scored by the same rewards and compared with the samples of their group: A_i = (r_i - mean) / std over both. Their tokens
 * have the ratio f(p) of ../loss/off_policy.h. A prompt without a demonstration has G samples.
 *
 * The metrics reward, rewards/... and completions/... are those of the samples.
 *
 *     AdvantageStats stats;
 *     OffPolicyOptions o = off_policy_options();                    // before options_parse_all()
 *     off_policy_open(&o, &g);                                      // after generation_open_prompts()
 *     off_policy_stats(&g, &stats);                                 // after the advantages of each generation
 *     off_policy_log(&g);
 */
#ifndef LLMC_TRAIN_OFF_POLICY_H
#define LLMC_TRAIN_OFF_POLICY_H

#include "../base/error.h"         /* die, warn, Error, usage_error, ... */
#include "../base/options.h"       /* OPTION_INT, OPTION_TEXT, OPTION_CHOICE, OPTION_REAL, ... */
#include "../loss/advantage.h"     /* AdvantageStats, advantage_batch_stats */
#include "../loss/off_policy.h"    /* OffPolicy, OFF_POLICY_RESHAPE_CHOICES, off_policy_default, ... */
#include "../report/metrics.h"     /* metrics_set */
#include "../rollout/off_policy.h" /* Demonstrations, demonstrations_read, demonstrations_offered */
#include "../rollout/rollout.h"    /* Sampling */
#include "generation.h"            /* Generation, generation_sampling */

typedef struct OffPolicyOptions {
    int64_t most; /* demonstrations of a group */
    const char *key;
    OffPolicy ratio;
} OffPolicyOptions;

static inline OffPolicyOptions off_policy_options(void) {
    return (OffPolicyOptions){.key = "target", .ratio = off_policy_default()};
}

// clang-format off
#define OFF_POLICY_OPTIONS(o)                                                                                          \
    OPTION_GROUP ("Demonstrations in the groups (LUFFY)"),                                                             \
    OPTION_INT   ("n-prefix",           0, &(o).most,          0, 4095,                                                \
                  "maximum number of demonstrations in a group, which replace samples: a group keeps its size; 0: none"), \
    OPTION_TEXT  ("target-key",         0, &(o).key,           "NAME",                                                 \
                  "field of a prompt's record that has its demonstrations: a text, an assistant's message, or a list"), \
    OPTION_CHOICE("off-policy-reshape", 0, &(o).ratio.reshape, OFF_POLICY_RESHAPE_CHOICES,                             \
                  "ratio of a demonstration's token of probability p: p / (p + gamma), or p"),                         \
    OPTION_REAL  ("off-policy-gamma",   0, &(o).ratio.gamma,   1e-9, 1e6, "gamma of p_div_p")
// clang-format on

/* Rejects options without effect, and groups without a sample. G: size of a group. */
static inline void off_policy_check(const OffPolicyOptions *o, const Option *table, int64_t G) {
    const bool on = o->most > 0;
    const OptionUse use[] = {
        {&o->key, on, "used only with --n-prefix"},
        {&o->ratio.reshape, on, "used only with --n-prefix"},
        {&o->ratio.gamma, on && o->ratio.reshape == OFF_POLICY_P_DIV_P,
         "used only with --n-prefix and --off-policy-reshape p_div_p"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    if (o->most >= G)
        usage_error("--n-prefix: %lld demonstrations leave no sample among the %lld completions of a group",
                    (long long)o->most, (long long)G);
}

/* Warns about demonstrations that are not used as they are. */
static inline void off_policy_warn(const Generation *g) {
    const Demonstrations *d = &g->given;
    const char *name = g->train.shard.name;
    if (d->too_long)
        warn("%s: %lld demonstrations do not fit into --max-completion-length %lld or the context, and are left out",
             name, (long long)d->too_long, (long long)g->o->max_completion);
    if (d->shortened)
        warn("%s: %lld demonstrations contain a token or text that ends a completion, and end there", name,
             (long long)d->shortened);
    if (d->beyond)
        warn("%s: %lld demonstrations are not used: --n-prefix takes the first %d of a prompt", name,
             (long long)d->beyond, d->most);
}

/* Reads the demonstrations of the training prompts, and prints how many there are. Without --n-prefix, warns if there are
 * some. */
static inline void off_policy_open(const OffPolicyOptions *o, Generation *g) {
    Error e;
    Demonstrations *d = &g->given;
    const bool says = g->t->dist.rank == 0;
    *d = (Demonstrations){.key = o->key, .most = (int32_t)o->most};
    if (!o->most) {
        if (says && demonstrations_offered(&g->train, o->key))
            warn("%s: prompts have demonstrations in the field '%s', which are used only with --n-prefix",
                 g->train.shard.name, o->key);
        return;
    }
    const Sampling how = generation_sampling(g);
    if (!demonstrations_read(d, &g->train, &g->t->text, &how, g->t->model.config.context, &e)) die("%s", e.text);
    if (says) off_policy_warn(g);
    if (says && !g->t->o->quiet)
        fprintf(stderr, "target  %s: %lld of %lld prompts have a demonstration, %lld in all; %lld prompts have none\n",
                g->train.shard.name, (long long)d->prompts, (long long)g->train.count, (long long)d->count,
                (long long)(g->train.count - d->prompts));
}

/* Sets the mean and the standard deviation of the rewards to those of the samples. */
static inline void off_policy_stats(const Generation *g, AdvantageStats *stats) {
    if (!g->given.count) return;
    float *reward = (float *)xmalloc((size_t)g->completions * sizeof *reward);
    for (int32_t i = 0; i < g->completions; i++) reward[i] = g->off_policy[i] ? NAN : g->reward[i];
    advantage_batch_stats(reward, g->completions, stats);
    free(reward);
}

/* Sets the mean reward of the generation's demonstrations, if it has any. */
static inline void off_policy_log(Generation *g) {
    double sum = 0, count = 0, all = 0;
    for (int32_t i = 0; i < g->completions; i++) {
        if (!g->off_policy[i]) continue;
        all++;
        if (isnan(g->reward[i])) continue;
        sum += g->reward[i];
        count++;
    }
    if (all > 0) metrics_set(&g->t->metrics, "off_policy/reward", sum / count);
}

#endif
