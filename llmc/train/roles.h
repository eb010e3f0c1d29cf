/* roles.h - the roles of a generation's completions, such as the players of a game.
 *
 * A program of --tool-cmd gives a completion its role (../rollout/episodes.h). Programs are games of their own: if several
 * of them answer whole turns, a role is that of one of them, as in "kuhn/first".
 *
 *     Roles roles;
 *     roles_open(&roles, &generation);                      // after generation_score()
 *     for (int k = 0; k < roles.count; k++) printf("%s\n", roles.name[k]);
 *     roles_close(&roles);
 */
#ifndef LLMC_TRAIN_ROLES_H
#define LLMC_TRAIN_ROLES_H

#include "../base/error.h"           /* Error, die, xmalloc, xstrdup */
#include "../base/text.h"            /* TextBuffer, text_clear, text_format, text_free, ... */
#include "../report/metrics.h"       /* metrics_set, Metrics */
#include "../rollout/episode_rows.h" /* episode_program_name, EpisodeRow, episode_row_read */
#include "../rollout/trajectory.h"   /* Trajectory */
#include "../tools/tool_program.h"   /* ToolPrograms */
#include "generation.h"              /* Generation */

enum { ROLES_MAX = 64 };

typedef struct Roles {
    char *name[ROLES_MAX];
    int count;
    int32_t *of; /* (completions) index of the role of each; -1: it has none */
} Roles;

/* The index of a name, which is added if it is new. Ends the program if there are too many. */
static inline int roles_find(Roles *r, const char *name) {
    int k = 0;
    while (k < r->count && strcmp(r->name[k], name)) k++;
    if (k < r->count) return k;
    if (k == ROLES_MAX)
        die("--tool-cmd: more than %d roles, such as '%s'; a role is what many completions have, as a player's", k,
            name);
    r->name[r->count++] = xstrdup(name);
    return k;
}

/* Writes the game of completion i and a slash if there is more than one game. */
static inline void roles_game(const Generation *g, int32_t i, TextBuffer *name) {
    const ToolPrograms *p = &g->episodes.programs;
    EpisodeRow row;
    Error unused; /* episodes_check() has found it */
    if (p->count < 2) return;
    if (!episode_row_read(&g->episodes.tools, p, &g->train.what[g->scored[i].prompt], &row, &unused)) return;
    if (row.text >= 0 && episode_program_name(&p->program[row.text]))
        text_format(name, "%s/", episode_program_name(&p->program[row.text]));
}

/* Reads the roles of a generation. */
static inline void roles_open(Roles *r, const Generation *g) {
    TextBuffer name = {0};
    *r = (Roles){.of = (int32_t *)xmalloc(((size_t)g->completions + 1) * sizeof *r->of)};
    for (int32_t i = 0; i < g->completions; i++) {
        const Trajectory *y = g->scored[i].completion.trajectory;
        r->of[i] = -1;
        if (!y || !*y->role) continue;
        text_clear(&name);
        roles_game(g, i, &name);
        text_string(&name, y->role);
        r->of[i] = roles_find(r, name.text);
    }
    text_free(&name);
}

static inline void roles_close(Roles *r) {
    for (int k = 0; k < r->count; k++) free(r->name[k]);
    free(r->of);
    *r = (Roles){0};
}

/* Sets the metrics of each role: the share of the completions that have it, and their mean reward. */
static inline void roles_log(const Roles *r, const Generation *g, Metrics *m) {
    for (int k = 0; k < r->count; k++) {
        double sum = 0, scored = 0, all = 0;
        char key[256];
        for (int32_t i = 0; i < g->completions; i++) {
            if (r->of[i] != k) continue;
            all++;
            if (isnan(g->scored[i].reward)) continue;
            scored++;
            sum += g->scored[i].reward;
        }
        snprintf(key, sizeof key, "role/%.200s/share", r->name[k]);
        metrics_set(m, key, all / g->completions);
        snprintf(key, sizeof key, "role/%.200s/reward", r->name[k]);
        metrics_set(m, key, scored > 0 ? sum / scored : NAN);
    }
}

#endif
