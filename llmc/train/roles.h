/* roles.h - the roles of a generation's completions, such as the players of a game, and the advantages that depend on them
 * (../loss/advantage_roles.h).
 *
 * A program of --tool-cmd gives a completion its role (../rollout/episodes.h). Programs are games of their own: if several
 * of them answer whole turns, a role is that of one of them, as in "kuhn/player0".
 *
 *     Roles roles = {0};
 *     int32_t *role = roles_read(&roles, &g, false);             // after generation_score()
 *     for (int k = 0; k < roles.count; k++) printf("%s\n", roles.name[k]);
 *     free(role);
 *     roles_free(&roles);
 *
 *     RoleBaselines b = {0};
 *     AdvantageStats stats;
 *     role_baselines_load(&b, trainer.state);
 *     role_baselines_advantages(&b, &g, g.reward, 0.95, advantage, &stats);
 *     role_baselines_save(&b, trainer.state);                    // as soon as the generation has been learned from
 *     role_baselines_free(&b);
 *
 *     AdvantageStats stats;
 *     roles_hierarchical(&g, "solver", g.reward, advantage, &stats);
 */
#ifndef LLMC_TRAIN_ROLES_H
#define LLMC_TRAIN_ROLES_H

#include "../base/error.h"           /* die, xcalloc, xmalloc, xstrdup */
#include "../base/text.h"            /* TextBuffer, text_free */
#include "../loss/advantage.h"       /* AdvantageStats, advantage_batch_stats, advantage_group_differs */
#include "../loss/advantage_roles.h" /* advantage_peers, advantage_rae */
#include "../report/metrics.h"       /* Metrics, metrics_set, metrics_warn */
#include "../rollout/episode_rows.h" /* episode_row_role */
#include "../rollout/role_rewards.h" /* RoleRewards, role_reward_mean, role_rewards_add, role_rewards_free */
#include "../rollout/trajectory.h"   /* Trajectory, TRAJECTORY_NAME */
#include "generation.h"              /* Generation */

enum { ROLES_MAX = 64 };

typedef struct Roles {
    char *name[ROLES_MAX];
    int count;
} Roles;

/* The baselines of rae. */
typedef struct RoleBaselines {
    Roles roles; /* without roles, the only one is "" */
    double value[ROLES_MAX];
    bool told; /* that there are no roles */
} RoleBaselines;

/* The index of a name, which is added if it is new. Ends the program if there are too many. */
static inline int roles_find(Roles *r, const char *name) {
    int k = 0;
    while (k < r->count && strcmp(r->name[k], name)) k++;
    if (k < r->count) return k;
    if (k == ROLES_MAX)
        die("--tool-cmd: more than %d roles, such as '%s'; a role is what many completions have, such as a player's", k,
            name);
    r->name[r->count++] = xstrdup(name);
    return k;
}

static inline void roles_free(Roles *r) {
    for (int k = 0; k < r->count; k++) free(r->name[k]);
    *r = (Roles){0};
}

/* Whether completion i has a role. */
static inline bool roles_has(const Generation *g, int32_t i) {
    const Trajectory *y = g->scored[i].completion.trajectory;
    return y && *y->role;
}

/* Writes the name of the role of completion i, which without one is that of its game. */
static inline void roles_name(const Generation *g, int32_t i, TextBuffer *name) {
    episode_row_role(&g->episodes.tools, &g->episodes.programs, &g->train.what[g->scored[i].prompt],
                     roles_has(g, i) ? g->scored[i].completion.trajectory->role : "", name);
}

/* Returns the index of the role of each completion, (completions), to be freed; -1: it has none. all: the completions with a
 * reward that have no role have one together. */
static inline int32_t *roles_read(Roles *r, const Generation *g, bool all) {
    TextBuffer name = {0};
    int32_t *of = (int32_t *)xmalloc(((size_t)g->completions + 1) * sizeof *of);
    for (int32_t i = 0; i < g->completions; i++) {
        of[i] = -1;
        if (!roles_has(g, i) && (!all || isnan(g->scored[i].reward))) continue;
        roles_name(g, i, &name);
        of[i] = roles_find(r, name.text);
    }
    text_free(&name);
    return of;
}

/* Sets the metrics of each role: the share of the completions that have it, and their mean reward. */
static inline void roles_log(const Generation *g, Metrics *m) {
    RoleRewards r = {0};
    TextBuffer name = {0};
    for (int32_t i = 0; i < g->completions; i++) {
        if (!roles_has(g, i)) continue;
        roles_name(g, i, &name);
        role_rewards_add(&r, name.text, g->scored[i].reward);
    }
    for (int k = 0; k < r.count; k++) {
        char key[256];
        snprintf(key, sizeof key, "role/%.200s/share", r.role[k].name);
        metrics_set(m, key, r.role[k].completions / g->completions);
        snprintf(key, sizeof key, "role/%.200s/reward", r.role[k].name);
        metrics_set(m, key, role_reward_mean(&r.role[k]));
    }
    text_free(&name);
    role_rewards_free(&r);
}

/* ---- rae ------------------------------------------------------------------------------------------------------- */

/* The completions in the order in which they were numbered, which is that of any number of ranks; to be freed. */
static inline int32_t *roles_order(const Generation *g) {
    int32_t *order = (int32_t *)xcalloc((size_t)g->completions + 1, sizeof *order);
    uint64_t first = UINT64_MAX;
    for (int32_t i = 0; i < g->completions; i++) first = g->scored[i].id < first ? g->scored[i].id : first;
    for (int32_t i = 0; i < g->completions; i++) order[g->scored[i].id - first] = i;
    return order;
}

/* reward, advantage: (completions) of a generation whose ids follow one another: without dynamic sampling. */
static inline void role_baselines_advantages(RoleBaselines *b, const Generation *g, const float *reward, double decay,
                                             float *advantage, AdvantageStats *stats) {
    const int32_t n = g->completions, G = (int32_t)g->o->generations;
    int32_t *role = roles_read(&b->roles, g, true), *order = roles_order(g), equal = 0;
    advantage_batch_stats(reward, n, stats);
    for (int32_t i = 0; i < n; i += G) equal += !advantage_group_differs(reward + i, G);
    stats->frac_reward_zero_std = (double)equal / (double)(n / G);
    advantage_rae(reward, role, order, n, decay, b->value, advantage);
    free(role), free(order);
}

/* Sets the metrics of the baselines. Warns the first time that there are no roles. */
static inline void role_baselines_log(RoleBaselines *b, Metrics *m) {
    for (int k = 0; k < b->roles.count; k++) {
        char key[256];
        snprintf(key, sizeof key, "role/%.200s%sbaseline", b->roles.name[k], *b->roles.name[k] ? "/" : "");
        metrics_set(m, key, b->value[k]);
    }
    if (!b->told && b->roles.count == 1 && !*b->roles.name[0])
        metrics_warn(m, "--advantage-estimator rae: no completion has a role, so that all have one baseline");
    b->told = true;
}

static inline void role_baselines_save(const RoleBaselines *b, json_t *state) {
    json_t *all = json_object();
    for (int k = 0; k < b->roles.count; k++) json_object_set_new(all, b->roles.name[k], json_real(b->value[k]));
    json_object_set_new(state, "role_baselines", all);
}

/* Continues with the baselines of a trainer's state. Ends the program if one of them is no number. */
static inline void role_baselines_load(RoleBaselines *b, const json_t *state) {
    json_t *all = json_object_get(state, "role_baselines"), *value;
    const char *name;
    json_object_foreach(all, name, value) {
        if (!json_is_number(value)) die("the state's baseline of the role '%.80s' is no number", name);
        const int k = roles_find(&b->roles, name);
        b->value[k] = json_number_value(value);
    }
}

static inline void role_baselines_free(RoleBaselines *b) { roles_free(&b->roles); }

/* ---- hierarchical_grpo ----------------------------------------------------------------------------------------- */

/* Whether a role is in a list of roles with commas between them. */
static inline bool roles_listed(const char *list, const char *role) {
    const size_t length = strlen(role);
    for (const char *at = list; *at;) {
        const size_t n = strcspn(at, ",");
        if (n == length && !memcmp(at, role, n)) return true;
        at += n + (at[n] == ',');
    }
    return false;
}

/* Whether completions i and k of a group have the same role and, if it is in `scoped`, the same episode. */
static inline bool roles_peers(const Generation *g, int32_t i, int32_t k, const char *scoped) {
    const Trajectory *a = g->scored[i].completion.trajectory, *b = g->scored[k].completion.trajectory;
    if (!roles_has(g, i) || !roles_has(g, k)) return false; /* lost completions have none */
    return !strcmp(a->role, b->role) && (!roles_listed(scoped, a->role) || !strcmp(a->episode_id, b->episode_id));
}

/* Ends the program if a completion with a reward has no role, or no episode although its role is in `scoped`. */
static inline void roles_check(const Generation *g, const char *scoped) {
    for (int32_t i = 0; i < g->completions; i++) {
        if (isnan(g->scored[i].reward)) continue;
        if (!roles_has(g, i))
            die("--advantage-estimator hierarchical_grpo: a completion has no role; the program of --tool-cmd gives it, as "
                "\"role\" in its answer to a reset or an end");
        if (roles_listed(scoped, g->scored[i].completion.trajectory->role) &&
            !*g->scored[i].completion.trajectory->episode_id)
            die("--episode-agents: a completion with the role '%s' has no episode; the program of --tool-cmd gives it, as "
                "\"episode\" in its answer to a reset or an end",
                g->scored[i].completion.trajectory->role);
    }
}

/* scoped: the roles that are compared within an episode; the others are compared within the group. reward, advantage:
 * (completions). Ends the program if the completions have no roles. */
static inline void roles_hierarchical(const Generation *g, const char *scoped, const float *reward, float *advantage,
                                      AdvantageStats *stats) {
    const int32_t n = g->completions, G = (int32_t)g->o->generations;
    int64_t equal = 0;
    roles_check(g, scoped);
    advantage_batch_stats(reward, n, stats);
    for (int32_t first = 0; first < n; first += G) {
        int32_t peers[G];
        for (int32_t i = 0; i < G; i++) {
            int32_t k = 0;
            while (k < i && !roles_peers(g, first + i, first + k, scoped)) k++;
            peers[i] = k;
        }
        equal += advantage_peers(reward + first, peers, G, advantage + first);
    }
    stats->frac_reward_zero_std = (double)equal / n;
}

/* Warns about each role of a list that no completion has. */
static inline void roles_warn_absent(const Generation *g, const char *list, Metrics *m) {
    for (const char *at = list; *at;) {
        char name[TRAJECTORY_NAME];
        const size_t n = strcspn(at, ",");
        bool any = false;
        snprintf(name, sizeof name, "%.*s", (int)n, at);
        for (int32_t i = 0; i < g->completions && !any; i++)
            any = roles_has(g, i) && !strcmp(g->scored[i].completion.trajectory->role, name);
        if (!any) metrics_warn(m, "--episode-agents: no completion has the role '%s'", name);
        at += n + (at[n] == ',');
    }
}

#endif
