/* advantage_turns.h - advantages of the turns of trajectories: credit within a completion.
 *
 * A group has G trajectories of one prompt. Trajectory i has turns k = 0 ... K_i - 1 with rewards r_ik of the environment
 * (NaN: none), an outcome O_i (what was given for the whole trajectory) and a reward R_i, which also has its share of the
 * rewards of turns. z(x) = (x - mean) / (std + EPS) over a set, or as advantage.h's --scale-rewards says:
 *
 *   turn     A_ik = z(O_i) + lambda z_k(r_ik), z_k over the group's trajectories with a reward at turn k
 *                                                          MT-GRPO: Zeng et al. 2025 (2505.11821); lambda --turn-weight
 *   return   A_ik = z(G_ik) over all turns of the group, G_ik = sum_(j >= k) gamma^(j-k) r_ij, where r_ij of the last turn
 *            has O_i in it, too                                                                       gamma --turn-gamma
 *   gigpo    A_ik = z(R_i) + omega z(G_ik), the second over the turns of the group that follow an equal state, the
 *            prompt being the state before turn 0; 0 for a state that occurs once
 *                                         GiGPO: Feng et al. 2025 (2505.10978), eq. 3-8; omega --gigpo-weight
 *
 * z is by the group's own deviation, the batch's, or none (SCALE_*); the batch's is that of all values of the same kind:
 * of z_k, of turn k. The function writes what a turn has in addition to the advantage of its whole trajectory, z(O_i) or
 * z(R_i), which advantage.h computes; their sum is A_ik. Trajectories whose reward is NaN are in no mean and get 0.
 *
 *     const int32_t turn[] = {0, 2, 3};                          // a group of two trajectories, of two turns and of one
 *     const float given[] = {0, 0.5f, 1}, outcome[] = {1, 0}, all[] = {1.5f, 1};
 *     const uint64_t state[] = {0, 7, 0};
 *     const TurnRewards t = {turn, given, state, outcome, all};
 *     const TurnCredit c = {CREDIT_GIGPO, SCALE_GROUP, 0.5, 1, 1};
 *     AdvantageStats stats;
 *     float addition[3];
 *     advantage_group(all, 1, 2, SCALE_GROUP, advantage, &stats);
 *     advantage_turns(&c, &t, 1, 2, advantage, addition);        // turn k of trajectory i: addition[turn[i] + k]
 */
#ifndef LLMC_LOSS_ADVANTAGE_TURNS_H
#define LLMC_LOSS_ADVANTAGE_TURNS_H

#include "../base/error.h" /* xcalloc */
#include "advantage.h"     /* spread_of, advantage_or_zero, Spread, ScaleRewards, ... */

#define ADVANTAGE_LEVELS "trajectory|turn|return|gigpo"
/* in the order of ADVANTAGE_LEVELS; CREDIT_TRAJECTORY: advantage.h alone */
typedef enum { CREDIT_TRAJECTORY, CREDIT_TURN, CREDIT_RETURN, CREDIT_GIGPO } AdvantageLevel;

typedef struct TurnCredit {
    AdvantageLevel level;
    ScaleRewards scale;
    double turn_weight, gamma, gigpo_weight;
} TurnCredit;

/* The turns of trajectory i of `groups * G` are [turn[i], turn[i+1]) of the arrays of turns. */
typedef struct TurnRewards {
    const int32_t *turn;     /* (trajectories + 1) */
    const float *reward;     /* (turns) NaN: none */
    const uint64_t *state;   /* (turns) what the turn was drawn after; equal for equal states */
    const float *outcome;    /* (trajectories) O_i */
    const float *trajectory; /* (trajectories) R_i; NaN: not scored */
} TurnRewards;

/* Sets value[turn[i] + k] to G_ik; NaN for trajectories that were not scored. */
static inline void turn_returns(const TurnRewards *t, double gamma, int64_t trajectories, float *value) {
    for (int64_t i = 0; i < trajectories; i++) {
        double sum = isnan(t->outcome[i]) ? 0 : t->outcome[i];
        for (int32_t k = t->turn[i + 1] - 1; k >= t->turn[i]; k--) {
            const double own = isnan(t->reward[k]) ? 0 : t->reward[k];
            sum = own + (k + 1 < t->turn[i + 1] ? gamma : 1) * sum;
            value[k] = isnan(t->trajectory[i]) ? NAN : (float)sum;
        }
    }
}

/* What z divides by: own: the spread of the set; all: of the batch. */
static inline double turn_divisor(ScaleRewards scale, double own, double all) {
    return scale == SCALE_NONE ? 1 : (scale == SCALE_BATCH ? all : own) + ADVANTAGE_EPS;
}

/* z_k of the rewards at each turn, times lambda. */
static inline void turn_rewards_normalised(const TurnCredit *c, const TurnRewards *t, int64_t groups, int64_t G,
                                           float *addition) {
    const int64_t n = groups * G;
    float *r = (float *)xcalloc((size_t)n + 1, sizeof *r);
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) most = t->turn[i + 1] - t->turn[i] > most ? t->turn[i + 1] - t->turn[i] : most;
    for (int32_t k = 0; k < most; k++) {
        for (int64_t i = 0; i < n; i++)
            r[i] = k < t->turn[i + 1] - t->turn[i] && !isnan(t->trajectory[i]) ? t->reward[t->turn[i] + k] : NAN;
        const double all = spread_of(r, n, 1).std;
        for (int64_t first = 0; first < n; first += G) {
            const Spread s = spread_of(r + first, G, 1);
            const double divisor = turn_divisor(c->scale, s.std, all);
            for (int64_t i = first; i < first + G; i++)
                if (k < t->turn[i + 1] - t->turn[i])
                    addition[t->turn[i] + k] =
                        s.count > 1 ? advantage_or_zero(c->turn_weight * (r[i] - s.mean) / divisor) : 0;
        }
    }
    free(r);
}

/* z of G_ik over the turns of each group. */
static inline void turn_returns_normalised(const TurnCredit *c, const TurnRewards *t, int64_t groups, int64_t G,
                                           const float *value, const float *advantage, float *addition) {
    const double all = spread_of(value, t->turn[groups * G], 1).std;
    for (int64_t g = 0; g < groups; g++) {
        const int32_t first = t->turn[g * G], end = t->turn[(g + 1) * G];
        const Spread s = spread_of(value + first, end - first, 1);
        for (int64_t i = g * G; i < (g + 1) * G; i++)
            for (int32_t k = t->turn[i]; k < t->turn[i + 1]; k++) {
                const double z = s.count > 1 ? (value[k] - s.mean) / turn_divisor(c->scale, s.std, all) : 0;
                addition[k] = advantage_or_zero((double)advantage_or_zero(z) - advantage[i]);
            }
    }
}

/* A turn and its state, to be sorted. */
typedef struct TurnState {
    uint64_t state;
    int32_t turn;
} TurnState;

static inline int turn_state_compare(const void *a, const void *b) {
    const TurnState *x = (const TurnState *)a, *y = (const TurnState *)b;
    if (x->state != y->state) return x->state < y->state ? -1 : 1;
    return (x->turn > y->turn) - (x->turn < y->turn);
}

/* omega z of G_ik over the turns of each group after an equal state. Returns the mean number of turns of a state. */
static inline double turn_states_normalised(const TurnCredit *c, const TurnRewards *t, int64_t groups, int64_t G,
                                            const float *value, float *addition) {
    TurnState *s = (TurnState *)xcalloc((size_t)t->turn[groups * G] + 1, sizeof *s);
    float *x = (float *)xcalloc((size_t)t->turn[groups * G] + 1, sizeof *x);
    double states = 0, turns = 0;
    for (int64_t g = 0; g < groups; g++) {
        int32_t n = 0;
        for (int32_t k = t->turn[g * G]; k < t->turn[(g + 1) * G]; k++) {
            addition[k] = 0;
            if (!isnan(value[k])) s[n++] = (TurnState){t->state[k], k};
        }
        qsort(s, (size_t)n, sizeof *s, turn_state_compare);
        for (int32_t i = 0, end; i < n; i = end) {
            for (end = i; end < n && s[end].state == s[i].state; end++) x[end - i] = value[s[end].turn];
            const Spread of = spread_of(x, end - i, 1);
            for (int32_t k = i; k < end && of.count > 1; k++)
                addition[s[k].turn] =
                    advantage_or_zero(c->gigpo_weight * (x[k - i] - of.mean) / turn_divisor(c->scale, of.std, of.std));
            states++;
        }
        turns += n;
    }
    free(s), free(x);
    return turns / states;
}

/* Writes addition: (turns), what each turn has in addition to advantage: (groups * G), that of its trajectory: of z(O_i)
 * for CREDIT_TURN, of z(R_i) for the others. 0 for trajectories that were not scored. Returns for CREDIT_GIGPO the mean
 * number of turns that follow a state, else NaN. */
static inline double advantage_turns(const TurnCredit *c, const TurnRewards *t, int64_t groups, int64_t G,
                                     const float *advantage, float *addition) {
    float *value = (float *)xcalloc((size_t)t->turn[groups * G] + 1, sizeof *value);
    double size = NAN;
    turn_returns(t, c->gamma, groups * G, value);
    if (c->level == CREDIT_TURN) turn_rewards_normalised(c, t, groups, G, addition);
    else if (c->level == CREDIT_RETURN) turn_returns_normalised(c, t, groups, G, value, advantage, addition);
    else size = turn_states_normalised(c, t, groups, G, value, addition);
    free(value);
    return size;
}

#endif
