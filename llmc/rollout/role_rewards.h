/* role_rewards.h - the mean reward of each role of completions, such as the players of a game.
 *
 *     RoleRewards r = {0};
 *     role_rewards_add(&r, "player0", 1);         // each completion that has a role; NaN: it has no reward
 *     for (int k = 0; k < r.count; k++) printf("%s %g\n", r.role[k].name, role_reward_mean(&r.role[k]));
 *     role_rewards_free(&r);
 */
#ifndef LLMC_ROLLOUT_ROLE_REWARDS_H
#define LLMC_ROLLOUT_ROLE_REWARDS_H

#include "../base/error.h" /* xrealloc, xstrdup */
#include <math.h>

typedef struct RoleReward {
    char *name;
    double completions; /* that have the role */
    double scored, sum; /* those with a reward; the sum of the rewards */
    double squares;     /* the sum of their squared distances from the mean */
} RoleReward;

typedef struct RoleRewards {
    RoleReward *role; /* (count) in the order in which they were added first */
    int count;
} RoleRewards;

/* The mean reward; NaN if none of the completions has one. */
static inline double role_reward_mean(const RoleReward *x) { return x->scored > 0 ? x->sum / x->scored : NAN; }

/* Adds a completion. The squared distances are added up by Welford's method. */
static inline void role_rewards_add(RoleRewards *r, const char *name, double reward) {
    int k = 0;
    while (k < r->count && strcmp(r->role[k].name, name)) k++;
    if (k == r->count) {
        r->role = (RoleReward *)xrealloc(r->role, (size_t)++r->count, sizeof *r->role);
        r->role[k] = (RoleReward){.name = xstrdup(name)};
    }
    RoleReward *x = &r->role[k];
    x->completions++;
    if (isnan(reward)) return;
    const double from = x->scored > 0 ? reward - role_reward_mean(x) : 0;
    x->sum += reward;
    x->scored++;
    x->squares += from * (reward - role_reward_mean(x));
}

/* The standard error of the mean; NaN with fewer than two rewards. */
static inline double role_reward_error(const RoleReward *x) {
    return x->scored > 1 ? sqrt(x->squares / (x->scored - 1) / x->scored) : NAN;
}

static inline void role_rewards_free(RoleRewards *r) {
    for (int k = 0; k < r->count; k++) free(r->role[k].name);
    free(r->role);
    *r = (RoleRewards){0};
}

#endif
