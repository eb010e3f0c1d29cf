/* preference_report.h - totals and metrics of train_dpo, under TRL's names.
 *
 *     PreferenceTotals stats = {0};
 *     dist_sum(&dist, DIST_FIELDS(stats));                       // dist/dist.h
 *     preference_report(&metrics, "eval_", &losses, &stats, z);  // sets eval_rewards/margins, ...
 */
#ifndef LLMC_TRAIN_PREFERENCE_REPORT_H
#define LLMC_TRAIN_PREFERENCE_REPORT_H

#include "../loss/kto.h"        /* KtoStats, kto_metrics */
#include "../loss/preference.h" /* PREFERENCE_METRICS, PreferenceStats, preference_metrics */
#include "../loss/scalar.h"     /* LossMetric */
#include "../report/metrics.h"  /* metrics_set, Metrics */
#include "preference_options.h" /* PreferenceOptions */

/* Totals of a pass over pairs or labelled completions. Doubles only, so that ranks can add them (dist.h). */
typedef struct PreferenceTotals {
    PreferenceStats pair;
    KtoStats kto;
    double loss, entropy, tokens, right, chosen_tokens, records;
} PreferenceTotals;

/* Sets the metrics, with a prefix. o: the losses; z: KTO's reference point. A metric that compares two completions is
 * left out if there was no pair: Nash-MD learns from single completions, in which the rejected one is empty. */
static inline void preference_report(Metrics *m, const char *prefix, const PreferenceOptions *o,
                                     const PreferenceTotals *s, double z) {
    LossMetric metric[PREFERENCE_METRICS];
    const int n =
        o->unpaired ? kto_metrics(&o->kto, &s->kto, z, metric) : preference_metrics(&o->pair, &s->pair, metric);
    char name[160];
    for (int i = 0; i < n; i++) {
        const char *what = metric[i].name;
        const bool compares =
            strstr(what, "rejected") || !strcmp(what, "rewards/accuracies") || !strcmp(what, "rewards/margins");
        if (compares && o->single) continue;
        snprintf(name, sizeof name, "%s%s", prefix, what);
        metrics_set(m, name, metric[i].value);
    }
    snprintf(name, sizeof name, "%sentropy", prefix);
    metrics_set(m, name, s->entropy / s->tokens);
    snprintf(name, sizeof name, "%smean_token_accuracy", prefix);
    metrics_set(m, name, s->right / s->chosen_tokens);
}

/* The fraction of pairs whose chosen completion has the higher reward; equal rewards count half. For kto, which has no
 * pairs: the reward margin, the mean reward of the good completions minus that of the bad ones. NaN if either has no
 * completion. */
static inline double preference_headline(const PreferenceOptions *o, const PreferenceTotals *s) {
    if (!o->unpaired) return s->pair.right / s->pair.pairs;
    return s->kto.reward[1] / s->kto.count[1] - s->kto.reward[0] / s->kto.count[0];
}

static inline void preference_headline_text(char text[64], const PreferenceOptions *o, const PreferenceTotals *s,
                                            double z) {
    if (o->unpaired) snprintf(text, 64, "margin %7.3f | kl %.3f", preference_headline(o, s), z);
    else
        snprintf(text, 64, "accuracy %5.1f%% | margin %7.3f", 100 * preference_headline(o, s),
                 (s->pair.chosen - s->pair.rejected) / s->pair.pairs);
}

#endif
