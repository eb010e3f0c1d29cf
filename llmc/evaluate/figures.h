/* figures.h - tables and JSON of the accuracies of a set of prompts.
 *
 *     figures_json(ev.result, &v, true);
 *     figures_table("all", &v, true);
 */
#ifndef LLMC_EVALUATE_FIGURES_H
#define LLMC_EVALUATE_FIGURES_H

#include "../base/text.h"            /* TextBuffer, text_free */
#include "../judge/judge.h"          /* Judge */
#include "../judge/judged.h"         /* judge_figures_json, judge_figures_text */
#include "../rollout/evaluation.h"   /* evaluation_weighted, Evaluation, wilson_interval */
#include "../rollout/role_rewards.h" /* RoleReward, RoleRewards, role_reward_error, role_reward_mean */
#include "../rollout/trajectory.h"   /* STOP_COUNT, STOP_COMPLETED, TrajectoryStop, trajectory_stop_name */
#include "evaluator.h"               /* evaluator_number, Evaluator, evaluator_count */

/* Adds the figures to a JSON object. */
static inline void figures_json(json_t *object, const Evaluation *v, bool rewarded) {
    const bool weighted = evaluation_weighted(v);
    double low, high;
    char key[32];
    wilson_interval(v->greedy, (double)v->prompts, &low, &high);
    evaluator_number(object, "accuracy", v->greedy);
    evaluator_number(object, "accuracy_error", v->greedy_error);
    evaluator_number(object, "accuracy_low", low);
    evaluator_number(object, "accuracy_high", high);
    evaluator_number(object, "mean_length", v->tokens);
    evaluator_number(object, "finished", v->finished);
    evaluator_count(object, "prompts", v->prompts);
    evaluator_count(object, "unscorable", v->unscorable);
    if (v->lost) evaluator_count(object, "samples_lost", v->lost);
    for (int k = 0; k < v->ks; k++) {
        const struct {
            const char *name;
            double value, error;
        } rows[] = {{"pass", v->pass[k], v->pass_error[k]},
                    {"majority", v->majority[k], v->majority_error[k]},
                    {"best", v->best[k], v->best_error[k]},
                    {"weighted", v->weighted[k], v->weighted_error[k]}};
        for (int i = 0; i < 4; i++) {
            if ((i == 2 && !rewarded) || (i == 3 && !weighted)) continue;
            snprintf(key, sizeof key, "%s@%d", rows[i].name, v->k[k]);
            evaluator_number(object, key, rows[i].value);
            snprintf(key, sizeof key, "%s@%d_error", rows[i].name, v->k[k]);
            evaluator_number(object, key, rows[i].error);
        }
    }
    if (rewarded || !isnan(v->reward)) { /* an environment gives rewards, too */
        evaluator_number(object, "reward", v->reward);
        evaluator_number(object, "reward_error", v->reward_error);
    }
}

/* Prints a cell of the table: "81.2 +- 1.3", or "-" if it is undefined. */
static inline void figures_cell(double value, double error) {
    if (isnan(value)) fprintf(stderr, " %13s |", "-");
    else if (isnan(error)) fprintf(stderr, " %5.1f        |", 100 * value);
    else fprintf(stderr, " %5.1f +- %4.1f |", 100 * value, 100 * error);
}

static inline void figures_table(const char *name, const Evaluation *v, bool rewarded) {
    double low, high;
    wilson_interval(v->greedy, (double)v->prompts, &low, &high);
    fprintf(stderr, "%s: %lld prompts", name, (long long)v->prompts);
    if (v->unscorable) fprintf(stderr, " and %lld that cannot be verified", (long long)v->unscorable);
    if (v->lost) fprintf(stderr, "; %lld samples were lost and do not count", (long long)v->lost);
    if (v->prompts)
        fprintf(stderr, "\n  greedy accuracy %.2f %%, 95 %% interval %.2f to %.2f; %.1f tokens, %.1f %% finished\n",
                100 * v->greedy, 100 * low, 100 * high, v->tokens, 100 * v->finished);
    else fprintf(stderr, "\n  greedy completions: %.1f tokens, %.1f %% finished\n", v->tokens, 100 * v->finished);
    if (rewarded || !isnan(v->reward))
        fprintf(stderr, "  reward of the samples %.4f +- %.4f\n", v->reward, v->reward_error);
    if (!v->ks || !v->prompts) return;
    fprintf(stderr, "  |    k |        pass@k |    majority@k |%s%s\n", rewarded ? "        best@k |" : "",
            evaluation_weighted(v) ? "    weighted@k |" : "");
    for (int k = 0; k < v->ks; k++) {
        fprintf(stderr, "  | %4d |", v->k[k]);
        figures_cell(v->pass[k], v->pass_error[k]);
        figures_cell(v->majority[k], v->majority_error[k]);
        if (rewarded) figures_cell(v->best[k], v->best_error[k]);
        if (evaluation_weighted(v)) figures_cell(v->weighted[k], v->weighted_error[k]);
        fputc('\n', stderr);
    }
}

/* Reports the statistics of the judge. */
static inline void figures_judge(Evaluator *ev, const Judge *j) {
    TextBuffer figures = {0};
    judge_figures_text(&j->sums, &figures);
    fprintf(stderr, "judge: %s\n", figures.text);
    json_object_set_new(ev->result, "judge", judge_figures_json(&j->sums));
    text_free(&figures);
}

/* Sums over completions of several turns. */
typedef struct TurnTotals {
    double completions, turns, calls, failed;
    double stop[STOP_COUNT];
    RoleRewards roles;
} TurnTotals;

/* Reports the mean reward of each role. */
static inline void figures_roles(Evaluator *ev, const TurnTotals *n) {
    if (!n->roles.count) return;
    json_t *roles = json_object();
    for (int k = 0; k < n->roles.count; k++) {
        const RoleReward *x = &n->roles.role[k];
        json_t *role = json_object();
        const double share = x->completions / n->completions, mean = role_reward_mean(x), error = role_reward_error(x);
        evaluator_number(role, "share", share);
        evaluator_number(role, "reward", mean);
        evaluator_number(role, "reward_error", error);
        json_object_set_new(roles, x->name, role);
        fprintf(stderr, "role %s: %.1f %% of the completions, reward %.4f +- %.4f\n", x->name, 100 * share, mean,
                error);
    }
    json_object_set_new(ev->result, "roles", roles);
}

/* Reports turns, calls and why completions ended. */
static inline void figures_turns(Evaluator *ev, const TurnTotals *n) {
    if (!n->completions) return;
    evaluator_number(ev->result, "turns_mean", n->turns / n->completions);
    evaluator_number(ev->result, "tool_calls_mean", n->calls / n->completions);
    evaluator_number(ev->result, "tool_failures", n->calls ? n->failed / n->calls : 0);
    fprintf(stderr, "%.2f turns and %.2f calls per completion, %.1f %% of the calls failed; ended by",
            n->turns / n->completions, n->calls / n->completions, n->calls ? 100 * n->failed / n->calls : 0);
    json_t *stops = json_object();
    const char *comma = "";
    for (int k = STOP_COMPLETED; k < STOP_COUNT; k++) {
        if (!n->stop[k]) continue;
        const char *name = trajectory_stop_name((TrajectoryStop)k);
        evaluator_number(stops, name, n->stop[k] / n->completions);
        fprintf(stderr, "%s %s %.1f %%", comma, name, 100 * n->stop[k] / n->completions);
        comma = ",";
    }
    fputc('\n', stderr);
    json_object_set_new(ev->result, "stop", stops);
    figures_roles(ev, n);
}

#endif
