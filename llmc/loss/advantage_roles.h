/* advantage_roles.h - advantages of completions that have roles, such as the players of a game.
 *
 *   rae               A_i = r_i - b,  then  b <- decay b + (1 - decay) r_i:  b is the baseline of the completion's game and role,
 *                     and begins at 0. Role-conditioned Advantage Estimation: SPIRAL, Liu et al. 2025 (2506.24119); prime-rl
 *   hierarchical_grpo A_i = r_i - mean of its peers: the completions of the group with its role and, for some roles, with its
 *                     episode, such as the attempts at one proposed problem. 0 without other peers.              prime-rl
 *
 * The paper's equation (2) updates b first, so that A_i = decay (r_i - b) in terms of the b before. The paper's code and
 * prime-rl take the b before, which does not depend on r_i, and so does this header.
 *
 * As in advantage.h, NaN marks a completion that could not be scored: it changes no baseline and no mean, and its advantage
 * is 0.
 *
 *     double baseline[2] = {0};                                           // of the roles 0 and 1
 *     const int32_t role[] = {0, 1, 0, 1}, order[] = {0, 1, 2, 3};
 *     advantage_rae(reward, role, order, 4, 0.95, baseline, advantage);
 */
#ifndef LLMC_LOSS_ADVANTAGE_ROLES_H
#define LLMC_LOSS_ADVANTAGE_ROLES_H

#include "advantage.h" /* advantage_or_zero */

/* reward, role, advantage: (n), where role is only read of completions with a reward; order: (n) the completions in the order in
 * which they change the baselines; baseline: (roles) */
static inline void advantage_rae(const float *reward, const int32_t *role, const int32_t *order, int64_t n,
                                 double decay, double *baseline, float *advantage) {
    for (int64_t k = 0; k < n; k++) {
        const int32_t i = order[k];
        advantage[i] = 0;
        if (isnan(reward[i])) continue;
        double *b = &baseline[role[i]];
        advantage[i] = advantage_or_zero((double)reward[i] - *b);
        *b = decay * *b + (1 - decay) * (double)reward[i];
    }
}

/* reward, peers, advantage: (n) of a group. Completions are peers if their numbers in `peers` are equal. Returns how many of them
 * have no peer with another reward. */
static inline int64_t advantage_peers(const float *reward, const int32_t *peers, int64_t n, float *advantage) {
    int64_t equal = 0;
    for (int64_t i = 0; i < n; i++) {
        double sum = 0, count = 0;
        bool differs = false;
        for (int64_t j = 0; j < n; j++) {
            if (peers[j] != peers[i] || isnan(reward[j])) continue;
            sum += (double)reward[j];
            count++;
            differs = differs || (!isnan(reward[i]) && reward[j] != reward[i]);
        }
        advantage[i] = differs ? advantage_or_zero((double)reward[i] - sum / count) : 0;
        equal += !differs;
    }
    return equal;
}

#endif
