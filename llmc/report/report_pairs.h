/* report_pairs.h - preference pairs with the model's scores of both answers, in a report.
 *
 *     report_pairs(f, &history);
 *
 * A pair is shown once, with its scores at every time at which it was scored: for a reward model its scores, for direct
 * preference optimisation the implicit rewards. The section is omitted if there are no pairs.
 */
#ifndef LLMC_REPORT_REPORT_PAIRS_H
#define LLMC_REPORT_REPORT_PAIRS_H

#include "chart_text.h" /* chart_value */
#include "history.h"    /* HistoryPair, History */
#include "html.h"       /* html_text, html_bytes, html_rest, html_shown */

enum {
    PAIRS_SHOWN = 64,  /* most pairs of a page */
    PAIRS_TEXT = 3000, /* bytes shown of a text */
};

static inline bool pair_same(const HistoryPair *a, const HistoryPair *b) {
    return !strcmp(a->prompt, b->prompt) && !strcmp(a->chosen, b->chosen) && !strcmp(a->rejected, b->rejected);
}

static inline void pair_text(FILE *f, const char *name, const char *class, const char *text) {
    const size_t n = html_shown(text, PAIRS_TEXT);
    fprintf(f, "<div class='take %s'><div class='got'>%s</div><pre>", class, name);
    html_bytes(f, text, n);
    html_rest(f, text, n);
    fputs("</pre></div>", f);
}

/* Writes the scores of a pair at one time. */
static inline void pair_scores(FILE *f, const HistoryPair *p) {
    char chosen[32], rejected[32], margin[32];
    const double difference = p->chosen_reward - p->rejected_reward;
    chart_value(p->chosen_reward, false, chosen);
    chart_value(p->rejected_reward, false, rejected);
    chart_value(difference, false, margin);
    fputs("<tr><td>", f);
    html_text(f, p->when);
    fprintf(f, "</td><td>%s</td><td>%s</td><td>%s</td><td class='%s'>%s</td></tr>\n", chosen, rejected, margin,
            difference > 0   ? "okay"
            : difference < 0 ? "wrong"
                             : "none",
            difference > 0    ? "\xE2\x9C\x93 chosen is higher"
            : difference < 0  ? "\xE2\x9C\x97 rejected is higher"
            : difference == 0 ? "\xE2\x89\x88 equal"
                              : "not scored");
}

/* Writes how many pairs are in the right order at a time. */
static inline void pair_tally(FILE *f, const History *h, const char *when) {
    size_t right = 0, all = 0;
    for (size_t i = 0; i < h->pair_count; i++) {
        if (strcmp(h->pairs[i].when, when)) continue;
        all++;
        right += h->pairs[i].chosen_reward > h->pairs[i].rejected_reward;
    }
    if (!all) return;
    fputs("<span>", f);
    html_text(f, when);
    fprintf(f, "</span><span><b>%zu of %zu</b> in the right order</span><div></div>", right, all);
}

/* A number of the run's options, or a default if it has none that is finite. */
static inline double pair_option(const json_t *args, const char *name, double standard) {
    const char *text = json_string_value(json_object_get(args, name));
    const double value = text ? atof(text) : standard;
    return isfinite(value) ? value : standard;
}

/* Whether one of train_dpo's losses, separated by commas, compares the policy with a reference. */
static inline bool pair_has_reference(const char *losses) {
    static const char *const without[] = {"sft", "orpo", "simpo", "cpo", "tpo", "tpo-l"};
    for (const char *name = losses; *name;) {
        const size_t n = strcspn(name, ",");
        bool has = n > 0;
        for (size_t i = 0; i < sizeof without / sizeof *without; i++)
            has = has && (strlen(without[i]) != n || strncmp(name, without[i], n));
        if (has) return true;
        name += n + (name[n] == ',');
    }
    return false;
}

/* Writes the pairs' implicit rewards for the script, which draws them over the contours of the loss, if the run is one of
 * train_dpo with a reference and a beta: the log-ratio to the reference is the reward divided by beta. */
static inline void pair_data(FILE *f, const History *h) {
    const json_t *args = json_object_get(json_array_get(h->starts, 0), "args");
    const char *loss = json_string_value(json_object_get(args, "loss-type"));
    const double b = pair_option(args, "beta", 0);
    if (!h->program || strcmp(h->program, "train_dpo") || !(b > 0) || (loss && !pair_has_reference(loss))) return;
    fputs("<div class='widget' data-widget='pairs'></div>\n<script type='application/json' id='pairs-data'>", f);
    fprintf(f, "{\"beta\":%.6g,\"smoothing\":%.6g,\"tau\":%.6g,\"lambda\":%.6g,\"loss\":\"%s\",\"pairs\":[", b,
            pair_option(args, "label-smoothing", 0), pair_option(args, "discopop-tau", 0.05),
            pair_option(args, "dpop-lambda", 50),
            loss && strspn(loss, "abcdefghijklmnopqrstuvwxyz_,-") == strlen(loss) ? loss : "");
    bool any = false;
    for (size_t i = 0; i < h->pair_count; i++) {
        const HistoryPair *p = &h->pairs[i];
        if (!isfinite(p->chosen_reward) || !isfinite(p->rejected_reward)) continue;
        fprintf(f, "%s[%.5g,%.5g,%d]", any ? "," : "", p->chosen_reward / b, p->rejected_reward / b,
                strcmp(p->when, "before") != 0);
        any = true;
    }
    fputs("]}</script>\n", f);
}

/* Writes the section. */
static inline void report_pairs(FILE *f, const History *h) {
    if (!h->pair_count) return;
    fputs(
        "<section id='pairs'><h2>Pairs</h2><p class='note'>The first pairs of the data with the scores that the model "
        "gives both answers. The chosen answer should score higher.</p>\n<div class='tally'>",
        f);
    for (size_t i = 0; i < h->pair_count; i++) {
        size_t first = 0;
        while (strcmp(h->pairs[first].when, h->pairs[i].when)) first++;
        if (first == i) pair_tally(f, h, h->pairs[i].when);
    }
    fputs("</div>\n", f);
    pair_data(f, h);
    size_t shown = 0;
    for (size_t i = 0; i < h->pair_count && shown < PAIRS_SHOWN; i++) {
        size_t first = 0;
        while (!pair_same(&h->pairs[first], &h->pairs[i])) first++;
        if (first < i) continue;
        fprintf(f, "<article class='prompt'><div class='ask'><span class='n'>%zu</span><pre>", ++shown);
        html_text(f, h->pairs[i].prompt);
        fputs("</pre></div><div><div class='pair'>", f);
        pair_text(f, "chosen", "ok", h->pairs[i].chosen);
        pair_text(f, "rejected", "bad", h->pairs[i].rejected);
        fputs("</div><div class='scroll'><table class='all'><thead><tr><th></th><th>chosen</th><th>rejected</th>"
              "<th>margin</th><th></th></tr></thead><tbody>\n",
              f);
        for (size_t k = i; k < h->pair_count; k++)
            if (pair_same(&h->pairs[i], &h->pairs[k])) pair_scores(f, &h->pairs[k]);
        fputs("</tbody></table></div></div></article>\n", f);
    }
    fputs("</section>\n", f);
}

#endif
