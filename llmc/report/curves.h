/* curves.h - selection, order and captions of a report's curves.
 *
 * The catalogue below lists the names of metrics that TRL's trainers and this project's log, each with its group,
 * title, description and unit. An unlisted metric is shown under its own name. Related curves share one chart:
 * "eval_loss" is drawn into the chart of "loss", and "completions/min_length" and "max_length" form a band around
 * "mean_length".
 *
 *     CurveList list = curve_list(&history);
 *     for (size_t i = 0; i < list.count; i++) curve_figure(f, &list.curves[i], i == 0);
 *     free(list.curves);
 */
#ifndef LLMC_REPORT_CURVES_H
#define LLMC_REPORT_CURVES_H

#include "chart.h"
#include "html.h"
#include <fnmatch.h>

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

static inline const char *curve_group_name(CurveGroup g) {
    static const char *const name[CURVE_GROUPS] = {"Accuracy",     "Reward",         "Policy", "Completions",
                                                   "Optimisation", "Speed and data", "Other"};
    return name[g];
}

/* Returns the first entry that matches a metric's name without "eval_". *rank is its index in the catalogue. */
static inline const CurveInfo *curve_info(const char *key, int *rank) {
    enum { S = CURVE_SMOOTH, Z = CURVE_ZERO, L = CURVE_LOG, P = CURVE_SHARE, H = CURVE_HEADLINE };
    static const CurveInfo table[] = {
        {"loss", CURVES_OPTIMISATION, "Loss", "the objective that is minimised", "loss", S | L | H},
        {"mean_token_accuracy", CURVES_OPTIMISATION, "Token accuracy",
         "target tokens that are the model's most likely token", "share of tokens", P | S | H},
        {"*perplexity*", CURVES_OPTIMISATION, "Perplexity", "exp of the loss", "perplexity", S | L | H},
        {"*loss*", CURVES_OPTIMISATION, NULL, "", "loss", S | L},
        {"grad_norm", CURVES_OPTIMISATION, "Gradient norm", "L2 norm before clipping", "norm", S | Z | L},
        {"learning_rate", CURVES_OPTIMISATION, "Learning rate", "", "rate", Z},
        {"lr", CURVES_OPTIMISATION, "Learning rate", "", "rate", Z},
        {"grad/*", CURVES_OPTIMISATION, NULL, "", "value", Z},
        {"rewards/accuracies", CURVES_REWARD, "Preference accuracy", "pairs whose chosen answer scores higher",
         "share of pairs", P | S | H},
        {"*accuracy*", CURVES_ACCURACY, "Accuracy", "completions that are right", "share", P | S | H},
        {"ece", CURVES_ACCURACY, "Calibration error", "mean gap between predicted probability and accuracy", "share",
         P},
        {"*pass@*", CURVES_ACCURACY, NULL, "prompts solved by at least one of k samples", "share of prompts", P | S},
        {"*majority@*", CURVES_ACCURACY, NULL, "prompts whose most common answer is right", "share of prompts", P | S},
        {"*best_of*", CURVES_ACCURACY, NULL, "prompts whose best-scored sample is right", "share of prompts", P | S},
        {"reward", CURVES_REWARD, "Reward", "mean over all completions of a step", "reward", S | H},
        {"mean_reward", CURVES_REWARD, "Reward", "mean score of chosen and rejected completions", "reward", S | H},
        {"reward_std", CURVES_REWARD, "Standard deviation of rewards", "over all completions of a step", "reward",
         S | Z},
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
        {"num_tokens", CURVES_SPEED, "Tokens", "processed since the start", "tokens", Z},
        {"epoch", CURVES_SPEED, "Epochs", "passes over the data", "epochs", Z},
        {"data/*", CURVES_SPEED, NULL, "", "value", S},
        {"*", CURVES_OTHER, NULL, "", "value", S},
    };
    for (size_t i = 0;; i++)
        if (!fnmatch(table[i].pattern, key, 0)) {
            *rank = (int)i;
            return &table[i];
        }
}

typedef struct Curve {
    Chart chart;
    const CurveInfo *info;
    const char *key;  /* name of the chart's first series */
    CurveGroup group; /* section of the page */
    int rank, order;
    bool eval; /* has held-out values only */
} Curve;

typedef struct CurveList {
    Curve *curves;
    size_t count;
} CurveList;

/* Returns the series named like s with the first "mean" replaced by `word`, if it has the same steps as s, or NULL. */
static inline const Series *curve_sibling(const History *h, const Series *s, const char *word) {
    const char *at = strstr(s->key, "mean");
    if (!at || !strcmp(s->key, "mean_token_accuracy")) return NULL;
    const size_t size = strlen(s->key) + 8;
    char *key = (char *)xmalloc(size);
    snprintf(key, size, "%.*s%s%s", (int)(at - s->key), s->key, word, at + 4);
    const Series *found = history_find(h, key);
    free(key);
    return found && found->count == s->count && !memcmp(found->steps, s->steps, s->count * sizeof *s->steps) ? found
                                                                                                             : NULL;
}

static inline int curve_compare(const void *a, const void *b) {
    const Curve *x = (const Curve *)a, *y = (const Curve *)b;
    if (x->group != y->group) return x->group < y->group ? -1 : 1;
    if (x->rank != y->rank) return x->rank - y->rank;
    return x->order - y->order;
}

static inline const char *curve_base(const char *key) { return strncmp(key, "eval_", 5) ? key : key + 5; }

/* Returns all charts of a run in display order; the caller frees list.curves. */
static inline CurveList curve_list(const History *h) {
    CurveList list = {(Curve *)xcalloc(h->series_count, sizeof(Curve)), 0};
    bool *taken = (bool *)xcalloc(h->series_count, sizeof *taken); /* drawn in the chart of another series */
    for (size_t i = 0; i < h->series_count; i++) {
        const Series *edges[2] = {curve_sibling(h, &h->series[i], "min"), curve_sibling(h, &h->series[i], "max")};
        for (int k = 0; k < 2; k++)
            if (edges[k]) taken[edges[k] - h->series] = true;
        if (curve_base(h->series[i].key) != h->series[i].key && history_find(h, curve_base(h->series[i].key)))
            taken[i] = true;
    }
    for (size_t i = 0; i < h->series_count; i++) {
        if (taken[i]) continue;
        const Series *s = &h->series[i];
        Curve *c = &list.curves[list.count++];
        c->key = s->key;
        c->order = (int)i;
        c->eval = curve_base(s->key) != s->key;
        c->info = curve_info(curve_base(s->key), &c->rank);
        c->group = c->info->group;
        const int flags = c->info->flags;
        c->chart = (Chart){.lines = {{.mid = s, .low = curve_sibling(h, s, "min"), .high = curve_sibling(h, s, "max")}},
                           .count = 1,
                           .unit = c->info->unit,
                           .share = flags & CURVE_SHARE,
                           .zero = flags & CURVE_ZERO,
                           .log = flags & CURVE_LOG,
                           .smooth = flags & CURVE_SMOOTH,
                           .x0 = (double)h->first_step,
                           .x1 = (double)h->last_step};
        double low = INFINITY, high = -INFINITY;
        if (c->chart.share && chart_range(s, &low, &high) && (low < 0 || high > 1))
            c->chart.share = false; /* not a share after all, e.g. a count */
        char *eval = (char *)xmalloc(strlen(s->key) + 6);
        sprintf(eval, "eval_%s", s->key);
        const Series *held_out = c->eval ? NULL : history_find(h, eval);
        if (held_out) {
            c->chart.lines[0].name = "training";
            c->chart.lines[1] = (ChartLine){.mid = held_out, .name = "held-out"};
            c->chart.count = 2;
        }
        free(eval);
    }
    free(taken);
    bool scored = false;
    for (size_t i = 0; i < list.count; i++) scored |= list.curves[i].group <= CURVES_REWARD;
    if (!scored) /* supervised training: the policy's curves belong with the loss */
        for (size_t i = 0; i < list.count; i++)
            if (list.curves[i].group == CURVES_POLICY) list.curves[i].group = CURVES_OPTIMISATION;
    qsort(list.curves, list.count, sizeof *list.curves, curve_compare);
    return list;
}

/* Writes "min 0.12 at 14  max 0.97 at 188  last 0.96"; with two curves, the curve's name and no steps. */
static inline void curve_stats(FILE *f, const Chart *c, int curve) {
    const ChartLine *line = &c->lines[curve];
    const Series *s = line->mid;
    size_t low = SIZE_MAX, high = SIZE_MAX;
    for (size_t i = 0; i < s->count; i++) {
        if (!isfinite(s->values[i])) continue;
        if (low == SIZE_MAX || s->values[i] < s->values[low]) low = i;
        if (high == SIZE_MAX || s->values[i] > s->values[high]) high = i;
    }
    fputs("<p class='stats'>", f);
    if (line->name) fprintf(f, "<i class='a%d'>%s</i>", curve, line->name);
    if (low == SIZE_MAX) fprintf(f, "<span>not finite at any of %zu steps</span>", s->count);
    else {
        char a[32], b[32], z[32];
        chart_value(s->values[low], c->share, a);
        chart_value(s->values[high], c->share, b);
        chart_value(s->values[chart_last(s)], c->share, z);
        if (line->name) fprintf(f, "<span>min <b>%s</b></span><span>max <b>%s</b></span>", a, b);
        else
            fprintf(f, "<span>min <b>%s</b> at %lld</span><span>max <b>%s</b> at %lld</span>", a,
                    (long long)s->steps[low], b, (long long)s->steps[high]);
        fprintf(f, "<span>last <b>%s</b></span>", z);
    }
    fputs("</p>", f);
}

/* Writes a chart with its caption and statistics. */
static inline void curve_figure(FILE *f, const Curve *curve, bool wide) {
    Chart c = curve->chart;
    fprintf(f, "<figure%s><figcaption><h4>", wide ? " class='wide'" : "");
    if (curve->info->title)
        fprintf(f, "%s%c%s <code>", curve->eval ? "Held-out " : "",
                curve->eval ? curve->info->title[0] | 0x20 : curve->info->title[0], curve->info->title + 1);
    else fputs("<code class='only'>", f);
    html_text(f, curve->key);
    fprintf(f, "</code></h4><p>%s", curve->info->about);
    const bool low = c.lines[0].low, high = c.lines[0].high;
    if (low || high)
        fprintf(f, "%s%s", *curve->info->about ? "; " : "",
                low && high ? "band: minimum to maximum"
                : low       ? "band: down to the minimum"
                            : "band: up to the maximum");
    fputs("</p></figcaption><div>", f);
    for (int narrow = 0; narrow <= wide; narrow++) { /* a wide chart has a second drawing for narrow windows */
        c.wide = wide && !narrow;
        chart_svg(f, &c);
        fputs("<script type='application/json'>", f);
        chart_data(f, &c);
        fputs("</script>", f);
    }
    for (int i = 0; i < c.count; i++) curve_stats(f, &c, i);
    fputs("</div></figure>\n", f);
}

#endif
