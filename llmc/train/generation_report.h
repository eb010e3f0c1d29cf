/* generation_report.h - evaluation, samples and metrics of the trainers that learn from their own completions.
 *
 *     Evaluation before = generation_evaluate(&g, "before");      // on the held-out prompts of --val
 *     generation_show(&g, "before");                              // prints --sample-count greedy completions
 *     generation_log(&g);                                         // metrics of the generation's rewards and lengths
 *     generation_compare(&g, &before, &after);                    // both evaluations, for the report
 */
#ifndef LLMC_TRAIN_GENERATION_REPORT_H
#define LLMC_TRAIN_GENERATION_REPORT_H

#include "../base/clock.h"              /* clock_seconds */
#include "../base/error.h"              /* die, xcalloc, Error, PLURAL, ... */
#include "../base/random.h"             /* RANDOM_EVAL */
#include "../base/text.h"               /* text_format, TextBuffer, text_free */
#include "../dist/dist.h"               /* dist_sum, DIST_FIELDS, dist_complete, dist_cut, ... */
#include "../judge/judge.h"             /* Judge */
#include "../judge/judged.h"            /* JUDGE_FIGURES, JudgeFigure, judge_figures */
#include "../judge/labels.h"            /* JudgeSums */
#include "../loss/advantage.h"          /* Spread, spread_of */
#include "../records/eval_sets.h"       /* eval_set_size */
#include "../records/mix.h"             /* mix_epochs */
#include "../report/metrics.h"          /* metrics_set, metrics_warn, Metrics, metrics_set_of, ... */
#include "../report/run_facts.h"        /* RUN_EVALUATION, RUN_SAMPLES, RunPhase */
#include "../reward/code_judge.h"       /* CodeCounts, CodeJudge */
#include "../reward/rewards.h"          /* Rewards */
#include "../reward/verify_answer.h"    /* RewardInput */
#include "../rollout/episodes.h"        /* EpisodeTimes */
#include "../rollout/evaluation.h"      /* Evaluation, Outcome, evaluation_summarise, evaluation_verifiable, ... */
#include "../rollout/prompts.h"         /* Prompts, prompts_input, prompts_length, prompts_request, ... */
#include "../rollout/rollout.h"         /* Completion, Sampling, RolloutRequest, completion_free, ... */
#include "../rollout/trajectory.h"      /* STOP_COUNT, STOP_TOOL_FAILED, TrajectoryCounts, STOP_AGENT_FAILED, ... */
#include "../sandbox/sandbox_outcome.h" /* SANDBOX_FAILED, SANDBOX_OUTCOMES, SandboxOutcome, ... */
#include "../tools/tools.h"             /* Tool */
#include "generation.h"                 /* Generation, generation_length */
#include "generation_options.h"         /* GenerationOptions */
#include "mixing.h"                     /* mixing_log */
#include "roles.h"                      /* roles_log */
#include "trainer.h"                    /* TrainerPause, trainer_check_metric, trainer_evaluated, trainer_go_on, ... */

/* Ends the program if the completions of no held-out prompt can be verified or scored. */
static inline void generation_check_evaluation(const Generation *g) {
    int64_t count = 0;
    if (!g->o->val.count || g->judge || g->episodes.programs.count || g->o->agent.command ||
        evaluation_verifiable(&g->val))
        return;
    if (!g->rewards.count || !prompts_scorable(&g->val, &g->rewards, &count, NULL))
        die("--val %s: no prompt has an answer that can be verified, and there is no other reward that could score it",
            g->val.shard.name);
}

/* Sets and prints the metrics of an evaluation. set: the name of its prompts, or NULL for all; scored: there is a reward, even if all are NaN;
 * seconds: NaN leaves them out. */
static inline void generation_set_evaluation(Generation *g, const char *set, const Evaluation *v, bool scored,
                                             const char *when, double seconds) {
    Metrics *m = &g->t->metrics;
    TextBuffer line = {0};
    char key[32];
    const int64_t count = v->prompts + v->unscorable;
    text_format(&line, "eval  %s%s%s", when, set ? " | " : "", set ? set : "");
    if (v->prompts) {
        metrics_set_of(m, set, "accuracy", v->greedy);
        text_format(&line, " | greedy accuracy %.1f%%", 100 * v->greedy);
    }
    if (scored || !isnan(v->reward)) {
        metrics_set_of(m, set, "reward", v->reward);
        text_format(&line, " | reward %.3f", v->reward);
    }
    metrics_set_of(m, set, "completions/mean_length", v->tokens);
    for (int k = 0; k < (v->prompts ? v->ks : 0); k++) {
        snprintf(key, sizeof key, "pass@%d", v->k[k]);
        metrics_set_of(m, set, key, v->pass[k]);
        text_format(&line, " | %s %.1f%%", key, 100 * v->pass[k]);
    }
    text_format(&line, " | %lld prompt%s", (long long)count, PLURAL(count));
    if (!isnan(seconds)) text_format(&line, " | %.1f s", seconds);
    metrics_summary(m, "%s", line.text);
    text_free(&line);
}

/* Evaluates the model on held-out prompts, by their verifiers and by the reward model; logs the results and prints a
 * line. It does not count as part of the step. when: a name for this point of the run, or NULL for the number of the
 * step. Collective. */
static inline Evaluation generation_evaluate(Generation *g, const char *when) {
    Error e;
    char step[32];
    snprintf(step, sizeof step, "step %lld", (long long)g->t->step);
    Evaluation v = {
        .samples = (int)g->o->eval_samples, .judge = g->judge, .code = g->code.open ? &g->code.scorer : NULL};
    Rewards *rewards = !g->judge && g->rewards.count && !evaluation_verifiable(&g->val) ? &g->rewards : NULL;
    Sampling how = g->sampling;
    how.stream = RANDOM_EVAL;
    const TrainerPause pause = trainer_pause(g->t, RUN_EVALUATION);
    const JudgeSums judged = g->language_judge.sums; /* those of the evaluation are not the step's */
    const int64_t count = g->val.count;
    const int ranks = g->t->dist.ranks, rank = g->t->dist.rank;
    double *cost = (double *)xcalloc((size_t)count, sizeof *cost);
    Outcome *outcome = (Outcome *)xcalloc((size_t)count, sizeof *outcome);
    int64_t cut[ranks + 1];
    for (int64_t i = 0; i < count; i++) cost[i] = prompts_length(&g->val, i) + (double)g->o->max_completion;
    dist_cut(cost, count, ranks, cut);
    v.outcome = outcome + cut[rank];
    if (!evaluate_tasks(&v, &g->engine, &how, &g->val, cut[rank], cut[rank + 1] - cut[rank], &g->t->text, rewards, NULL,
                        NULL, &e))
        die("%s: %s", g->val.shard.name, e.text);
    g->language_judge.sums = judged;
    dist_complete(&g->t->dist, outcome, cut, sizeof *outcome);
    for (int k = 0; k < g->held.count && g->held.told; k++) {
        Evaluation part = v;
        evaluation_summarise(&part, outcome + g->held.first[k], eval_set_size(&g->held, k));
        generation_set_evaluation(g, g->held.name[k], &part, rewards || v.judge, when ? when : step, NAN);
    }
    evaluation_summarise(&v, outcome, count);
    v.outcome = NULL;
    free(cost), free(outcome);
    generation_set_evaluation(g, NULL, &v, rewards || v.judge, when ? when : step, clock_seconds() - pause.start);
    trainer_go_on(g->t, pause);
    if (g->t->step) trainer_evaluated(g->t);
    else trainer_check_metric(g->t);
    return v;
}

/* Adds a figure before and after the run to the report. before: NULL if there was no evaluation on start. */
static inline void generation_final(Generation *g, const char *name, const char *form, const double *before,
                                    double after) {
    char a[32], b[32];
    snprintf(b, sizeof b, form, after);
    if (before) snprintf(a, sizeof a, form, *before);
    metrics_final(&g->t->metrics, name, before ? a : NULL, b);
    if (before) metrics_line(&g->t->metrics, "%s: %s before, %s after", name, a, b);
    else metrics_line(&g->t->metrics, "%s: %s after", name, b);
}

/* Prints the evaluation before and after the run, and adds it to the report. before: all 0 if there was none. */
static inline void generation_compare(Generation *g, const Evaluation *before, const Evaluation *after) {
    const bool both = before->prompts + before->unscorable > 0;
    if (after->prompts) {
        const double first = 100 * before->greedy;
        generation_final(g, "held-out greedy accuracy", "%.1f %%", both ? &first : NULL, 100 * after->greedy);
    }
    if (!isnan(after->reward))
        generation_final(g, "held-out reward", "%.4f", both ? &before->reward : NULL, after->reward);
    for (int k = 0; k < (after->prompts ? after->ks : 0); k++) {
        char name[32];
        const double first = 100 * before->pass[k];
        snprintf(name, sizeof name, "held-out pass@%d", after->k[k]);
        generation_final(g, name, "%.1f %%", both ? &first : NULL, 100 * after->pass[k]);
    }
}

/* Prints greedy completions of the first held-out prompts, or of the first training prompts if there are none. */
static inline void generation_show(Generation *g, const char *when) {
    Error e;
    const Prompts *p = g->o->val.count ? &g->val : &g->train;
    Sampling how = g->sampling;
    how.temperature = 0;
    if (g->t->dist.rank) return;
    const RunPhase phase = metrics_phase(&g->t->metrics, RUN_SAMPLES);
    for (int64_t i = 0; i < p->count && i < g->o->sample_count; i++) {
        Completion c;
        RolloutRequest q = prompts_request(p, i, 1, 0, &c);
        if (!rollout_run(&g->engine, &how, &q, 1, NULL, NULL, &e)) die("%s", e.text);
        size_t length;
        char *text = prompts_said(&how, &g->t->text, &c, &length);
        const RewardInput in = prompts_input(p, i, text, length, &c, 0, how.max_new);
        double right;
        if (!evaluation_check_all(&in, 1, g->code.open ? &g->code.scorer : NULL, &right, &e)) die("%s", e.text);
        const bool several = c.trajectory && c.trajectory->turns > 1; /* the text is that of the last turn */
        metrics_line(&g->t->metrics, "%-6s %s%s%s%s", when, p->what[i].text, several ? " ... " : "", text,
                     isnan(right)  ? ""
                     : right > 0.5 ? "  (right)"
                                   : "  (wrong)");
        metrics_sample(&g->t->metrics, when, p->what[i].text, text, p->what[i].answer, right);
        free(text);
        completion_free(&c);
    }
    metrics_phase(&g->t->metrics, phase);
}

/* Warns if sampler and trainer disagree. gap: the largest difference between their log-probabilities of a token, in
 * nats. Call it only if both used the same weights. */
static inline void generation_check_sampler(Generation *g, double gap) {
    if (gap > (g->t->o->dtype ? 0.5 : 0.01))
        metrics_warn(&g->t->metrics, "sampler and trainer disagree by %.3g nats on a token", gap);
}

static inline int generation_by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sets p to the median and the 99th percentile of n numbers, which it sorts: the largest ones of all ranks. 0 if there are
 * none. Collective. */
static inline void generation_percentiles(const Generation *g, double *x, size_t n, double p[2]) {
    if (n) qsort(x, n, sizeof *x, generation_by_size);
    for (int i = 0; i < 2; i++) p[i] = n ? x[(size_t)((i ? 0.99 : 0.5) * (double)(n - 1))] : 0;
    dist_max(&g->t->dist, p, 2);
}

/* Sets the metrics of a tool: its calls on all ranks, and percentiles of the seconds that they took, on the slowest rank.
 * Collective. */
static inline void generation_log_tool(Generation *g, Tool *tool, EpisodeTimes *t) {
    char key[128];
    double calls = (double)tool->calls, seconds[2];
    generation_percentiles(g, t->seconds, (size_t)t->count, seconds);
    dist_sum(&g->t->dist, &calls, 1);
    snprintf(key, sizeof key, "tools/%.80s/calls", tool->name);
    metrics_set(&g->t->metrics, key, calls);
    for (int i = 0; calls > 0 && i < 2; i++) {
        snprintf(key, sizeof key, "tools/%.80s/latency_%s", tool->name, i ? "p99" : "p50");
        metrics_set(&g->t->metrics, key, seconds[i]);
    }
    tool->calls = t->count = 0;
}

/* Whether a count is not 0 for the first time. warning: its number, below 32. */
static inline bool generation_first_time(Generation *g, int warning, double count) {
    const bool first = count > 0 && !(g->told >> warning & 1);
    if (first) g->told |= 1u << warning;
    return first;
}

/* Warns the first time that completions were lost, that results were cut, and that the engine mostly waited for results. sum,
 * lost: over the completions of all ranks. */
static inline void generation_warn_turns(Generation *g, const TrajectoryCounts *sum, int64_t lost, double parked) {
    Metrics *m = &g->t->metrics;
    const GenerationOptions *o = g->o;
    enum { LOST, CUT, PARKED };
    const char *why = g->episodes.programs.why.text;
    if (generation_first_time(g, LOST, (double)lost))
        metrics_warn(m, "%lld of %d completions were lost because a tool failed, and have no reward: %s",
                     (long long)lost, g->completions, *why ? why : "on another rank");
    if (generation_first_time(g, CUT, sum->truncated_results))
        metrics_warn(m, "%d results of tools had more than %lld tokens and were cut (--max-tool-response-length)",
                     sum->truncated_results, (long long)o->episodes.max_response);
    if (g->completions / g->t->dist.ranks > g->engine.slots && generation_first_time(g, PARKED, parked - 0.5))
        metrics_warn(m, "slots waited for results of tools %.0f %% of the time: more --slots would keep the model busy",
                     100 * parked);
}

/* Sets the metrics of trajectories with tools. Collective. */
static inline void generation_log_turns(Generation *g) {
    Metrics *m = &g->t->metrics;
    TrajectoryCounts sum = {0};
    int64_t stops[STOP_COUNT] = {0}, observed = 0, turns = 0, most = 0;
    char key[128];
    for (int32_t i = 0; i < g->completions; i++) {
        const Completion *c = &g->scored[i].completion;
        const Trajectory *y = c->trajectory;
        stops[y->stop]++;
        observed += c->count - y->drawn_count - y->masked;
        turns += y->turns;
        most = y->turns > most ? y->turns : most;
        for (int k = 0; k < TRAJECTORY_COUNTS; k++) ((int32_t *)&sum)[k] += ((const int32_t *)&y->counts)[k];
    }
    const double n = g->completions;
    metrics_set(m, "tools/call_frequency", sum.calls / n);
    metrics_set(m, "tools/failure_frequency", sum.calls ? (double)sum.failed_calls / sum.calls : 0);
    metrics_set(m, "tools/parse_errors", sum.parse_errors / n);
    metrics_set(m, "tools/truncated_results", sum.truncated_results);
    metrics_set(m, "tools/arguments_as_string", sum.arguments_as_string);
    metrics_set(m, "tools/text_after_call", sum.text_after_call);
    metrics_set(m, "tools/overrun_bytes", sum.overrun_bytes);
    metrics_set(m, "tools/infrastructure_failures", (double)stops[STOP_TOOL_FAILED]);
    metrics_set(m, "turns/mean", (double)turns / n);
    metrics_set(m, "turns/max", (double)most);
    metrics_set(m, "rollout/observed_tokens", (double)observed);
    const double parked = g->engine.used_seconds > 0 ? g->engine.parked_seconds / g->engine.used_seconds : NAN;
    if (g->engine.used_seconds > 0) metrics_set(m, "rollout/parked_share", parked);
    if (!g->o->agent.command) generation_warn_turns(g, &sum, stops[STOP_TOOL_FAILED], parked);
    for (int k = 0; k < g->episodes.tools.count; k++)
        generation_log_tool(g, &g->episodes.tools.tool[k], &g->episodes.times[k]);
    g->engine.parked_seconds = g->engine.used_seconds = 0;
    for (int k = STOP_COMPLETED; k < STOP_COUNT; k++) {
        if (k == STOP_AGENT_FAILED && !g->o->agent.command) continue;
        snprintf(key, sizeof key, "stop/%s", trajectory_stop_name((TrajectoryStop)k));
        metrics_set(m, key, (double)stops[k] / n);
    }
}

/* Sets the metrics of completions that are programs, over all ranks, and begins to count again: how many had each outcome;
 * the tests that were run; percentiles of the seconds of a completion, on the slowest rank; programs that waited for a
 * sandbox to start. Warns the first time that completions cannot be scored because the sandbox failed. Collective. */
static inline void generation_log_code(Generation *g) {
    CodeJudge *j = &g->code;
    Metrics *m = &g->t->metrics;
    CodeCounts *c = &j->counts;
    double seconds[2];
    char key[64];
    if (!j->open) return;
    generation_percentiles(g, j->seconds, j->timed, seconds);
    dist_sum(&g->t->dist, (double *)c, sizeof *c / sizeof(double));
    for (int i = 0; i < SANDBOX_OUTCOMES; i++) {
        snprintf(key, sizeof key, "code/%s", sandbox_outcome_name((SandboxOutcome)i));
        metrics_set(m, key, c->outcome[i]);
    }
    metrics_set(m, "code/unscorable", c->unscorable);
    metrics_set(m, "code/tests_run", c->tests);
    metrics_set(m, "code/pool_misses", c->misses);
    metrics_set(m, "code/seconds_p50", seconds[0]);
    metrics_set(m, "code/seconds_p99", seconds[1]);
    if (c->outcome[SANDBOX_FAILED] > 0 && !j->warned) {
        metrics_warn(m, "the sandbox failed for %.0f completions, which have no reward: %s", c->outcome[SANDBOX_FAILED],
                     j->failure.text[0] ? j->failure.text : "on another rank");
        j->warned = true;
    }
    *c = (CodeCounts){0};
    j->timed = 0;
}

/* Sets the metrics of the judge, over all ranks, and begins to count again. Warns the first time that it hardly ever answers
 * with a label, and that questions do not fit its context. Collective. */
static inline void generation_log_judge(Generation *g) {
    Metrics *m = &g->t->metrics;
    Judge *j = &g->language_judge;
    JudgeSums s = j->sums;
    JudgeFigure figure[JUDGE_FIGURES];
    char key[64];
    if (!j->open) return;
    j->sums = (JudgeSums){0};
    dist_sum(&g->t->dist, DIST_FIELDS(s));
    const int n = judge_figures(&s, figure);
    for (int i = 0; i < n; i++) {
        snprintf(key, sizeof key, "judge/%s", figure[i].name);
        metrics_set(m, key, figure[i].value);
    }
    if (s.mass < 0.5 * s.answered && !j->warned_mass) {
        metrics_warn(
            m,
            "the judge answers with one of its labels with a probability of only %.2g: it does not know the form "
            "of the question",
            s.mass / s.answered);
        j->warned_mass = true;
    }
    if (s.too_long > 0 && !j->warned_long) {
        metrics_warn(
            m, "%.0f of %.0f questions do not fit the judge's context of %d tokens; what they ask about is not scored",
            s.too_long, s.questions, j->local.model.config.context);
        j->warned_long = true;
    }
}

/* Sets TRL's metrics of each reward and of the completion lengths, of the completions that the policy drew. Warns if none of
 * them ended. */
static inline void generation_log(Generation *g) {
    Metrics *m = &g->t->metrics;
    char key[128];
    float *part = (float *)xmalloc((size_t)g->completions * sizeof *part);
    double *each = (double *)xcalloc((size_t)g->completions + 1, sizeof *each);
    for (int k = 0; k < g->rewards.count; k++) {
        int32_t n = 0;
        for (int32_t i = 0; i < g->completions; i++) {
            if (g->scored[i].off_policy) continue;
            each[n] = part[n] = g->scored[i].parts[k];
            n++;
        }
        snprintf(key, sizeof key, "rewards/%s", g->rewards.name[k]);
        metrics_distribution(m, key, each, (size_t)n);
        const Spread s = spread_of(part, n, 1);
        snprintf(key, sizeof key, "rewards/%s/mean", g->rewards.name[k]);
        metrics_set(m, key, s.mean);
        snprintf(key, sizeof key, "rewards/%s/std", g->rewards.name[k]);
        metrics_set(m, key, s.std);
    }
    free(part);
    double sum[2] = {0}, least[2] = {INFINITY, INFINITY}, most[2] = {-INFINITY, -INFINITY}, count[2] = {0};
    for (int32_t i = 0; i < g->completions; i++)
        for (int ended = 0; ended < 2; ended++) {
            const Completion *c = &g->scored[i].completion;
            if (g->scored[i].off_policy || (ended && !c->finished)) continue;
            const int32_t n = generation_length(c);
            if (!ended) each[(size_t)count[0]] = n;
            sum[ended] += n;
            count[ended]++;
            least[ended] = fmin(least[ended], n);
            most[ended] = fmax(most[ended], n);
        }
    metrics_distribution(m, "completions/length", each, (size_t)count[0]);
    free(each);
    metrics_set(m, "completions/mean_length", sum[0] / count[0]);
    metrics_set(m, "completions/min_length", least[0]);
    metrics_set(m, "completions/max_length", most[0]);
    metrics_set(m, "completions/clipped_ratio", 1 - count[1] / count[0]);
    metrics_set(m, "completions/mean_terminated_length", count[1] ? sum[1] / count[1] : 0);
    metrics_set(m, "completions/min_terminated_length", count[1] ? least[1] : 0);
    metrics_set(m, "completions/max_terminated_length", count[1] ? most[1] : 0);
    metrics_set(m, "timing_s/gen", g->gen_seconds);
    metrics_set(m, "timing_s/reward", g->reward_seconds);
    generation_log_code(g);
    generation_log_judge(g);
    metrics_set(m, "epoch", mix_epochs(&g->mixture));
    mixing_log(&g->mixture, m);
    if (g->engine.turns || g->o->agent.command) generation_log_turns(g);
    roles_log(g, m);
    if (count[1] == 0) metrics_warn(m, "no completion ended within %lld tokens", (long long)g->o->max_completion);
}

#endif
