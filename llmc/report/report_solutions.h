/* report_solutions.h - labelled solutions with the score that a reward model gives each step, in a report.
 *
 *     report_solutions(f, &history);
 *
 * A solution is shown once: its steps in their order, with the label of each and, for every time at which the model scored it,
 * the probability sigmoid(score) that the solution is right so far. Below are the scores of the whole solution by the three
 * aggregations that `evaluate` has: the minimum, the product and the last one of the steps' probabilities. A completion with
 * one label is a solution of one step. The section is omitted if there are no solutions.
 */
#ifndef LLMC_REPORT_REPORT_SOLUTIONS_H
#define LLMC_REPORT_REPORT_SOLUTIONS_H

#include "../base/error.h" /* xcalloc */
#include "chart_text.h"    /* chart_value */
#include "history.h"       /* History, HistorySolution, history_number */
#include "html.h"          /* html_text, html_bytes, html_rest, html_shown */

enum { SOLUTIONS_SHOWN = 64, SOLUTIONS_STEPS = 64, SOLUTIONS_TEXT = 1000 /* bytes shown of a text */ };

/* The probability that step k is right so far; NaN if it was not scored. */
static inline double solution_step(const HistorySolution *s, size_t k) {
    const double score = history_number(json_object_get(json_array_get(s->steps, k), "score"));
    return 1 / (1 + exp(-score));
}

static inline double solution_label(const HistorySolution *s, size_t k) {
    return history_number(json_object_get(json_array_get(s->steps, k), "label"));
}

static inline const char *solution_text(const HistorySolution *s, size_t k) {
    return json_string_value(json_object_get(json_array_get(s->steps, k), "text"));
}

/* Whether both are scores of one solution. */
static inline bool solution_same(const HistorySolution *a, const HistorySolution *b) {
    const size_t n = json_array_size(a->steps);
    bool same = !strcmp(a->prompt, b->prompt) && json_array_size(b->steps) == n;
    for (size_t k = 0; same && k < n; k++)
        same = solution_label(a, k) == solution_label(b, k) && !strcmp(solution_text(a, k), solution_text(b, k));
    return same;
}

/* Writes how many steps are classified as their label says, at a time. */
static inline void solution_tally(FILE *f, const History *h, const char *when) {
    size_t right = 0, all = 0;
    for (size_t i = 0; i < h->solution_count; i++) {
        const HistorySolution *s = &h->solutions[i];
        if (strcmp(s->when, when)) continue;
        for (size_t k = 0; k < json_array_size(s->steps); k++) {
            const double p = solution_step(s, k);
            all++;
            right += isfinite(p) && p != 0.5 && (p > 0.5) == (solution_label(s, k) >= 0.5);
        }
    }
    fputs("<span>", f);
    html_text(f, when);
    fprintf(f, "</span><span><b>%zu of %zu</b> steps are classified as labelled</span><div></div>", right, all);
}

/* Writes a probability as a number and a bar; class: "okay", "wrong" or "". */
static inline void solution_cell(FILE *f, double p, const char *class) {
    char text[32];
    chart_value(p, true, text);
    fprintf(f, "<td class='%s'>%s%s", class, !strcmp(class, "wrong") ? "\xE2\x9C\x97 " : "", text);
    if (isfinite(p))
        fprintf(f,
                "<svg class='value' viewBox='0 0 60 12' aria-hidden='true'><rect class='minus' x='1' y='2' width='58' "
                "height='8'/><rect class='plus' x='1' y='2' width='%.1f' height='8'/></svg>",
                58 * p);
    fputs("</td>", f);
}

/* Writes a row of the table: step k of a solution with its scores at each time; list: the same solution at all times. */
static inline void solution_row(FILE *f, const HistorySolution *const *list, size_t times, size_t k) {
    const char *text = solution_text(list[0], k);
    const double label = solution_label(list[0], k);
    const size_t n = html_shown(text, SOLUTIONS_TEXT);
    char share[32];
    fputs("<tr><td><pre>", f);
    html_bytes(f, text, n);
    html_rest(f, text, n);
    fputs("</pre></td>", f);
    if (label == 0 || label == 1) fprintf(f, "<td>%s</td>", label > 0 ? "right" : "wrong");
    else {
        chart_value(label, true, share);
        fprintf(f, "<td>%s right</td>", share);
    }
    for (size_t i = 0; i < times; i++) {
        const double p = solution_step(list[i], k);
        solution_cell(f, p, !isfinite(p) || p == 0.5 ? "" : (p > 0.5) == (label >= 0.5) ? "okay" : "wrong");
    }
    fputs("</tr>\n", f);
}

/* Writes the rows of the whole solution: minimum, product and last of the steps' probabilities. */
static inline void solution_totals(FILE *f, const HistorySolution *const *list, size_t times) {
    static const char *const names[] = {"minimum", "product", "last"};
    const size_t n = json_array_size(list[0]->steps);
    if (n < 2) return;
    for (int kind = 0; kind < 3; kind++) {
        fprintf(f, "<tr class='total'><td>%s</td><td></td>", names[kind]);
        for (size_t i = 0; i < times; i++) {
            double total = 1;
            for (size_t k = 0; k < n; k++) {
                const double p = solution_step(list[i], k);
                total = isnan(p) || isnan(total) ? NAN : kind == 0 ? fmin(total, p) : kind == 1 ? total * p : p;
            }
            solution_cell(f, total, "");
        }
        fputs("</tr>\n", f);
    }
}

/* Writes solution i with its scores at every time. */
static inline void solution_article(FILE *f, const History *h, size_t i, size_t number) {
    const size_t steps = json_array_size(h->solutions[i].steps);
    const HistorySolution **list = (const HistorySolution **)xcalloc(h->solution_count, sizeof *list);
    size_t times = 0;
    for (size_t k = i; k < h->solution_count; k++)
        if (solution_same(&h->solutions[i], &h->solutions[k])) list[times++] = &h->solutions[k];
    fprintf(f, "<article class='prompt'><div class='ask'><span class='n'>%zu</span><pre>", number);
    html_text(f, h->solutions[i].prompt);
    fputs("</pre></div><div class='scroll'><table class='all steps'><thead><tr><th scope='col'>step</th><th "
          "scope='col'>label</th>",
          f);
    for (size_t k = 0; k < times; k++) {
        fputs("<th scope='col'>", f);
        html_text(f, list[k]->when);
        fputs("</th>", f);
    }
    fputs("</tr></thead><tbody>\n", f);
    for (size_t k = 0; k < steps && k < SOLUTIONS_STEPS; k++) solution_row(f, list, times, k);
    solution_totals(f, list, times);
    fputs("</tbody></table></div></article>\n", f);
    if (steps > SOLUTIONS_STEPS)
        fprintf(f, "<p class='note'>%zu more steps are not shown.</p>\n", steps - SOLUTIONS_STEPS);
    free(list);
}

/* Writes the section. */
static inline void report_solutions(FILE *f, const History *h) {
    if (!h->solution_count) return;
    fputs(
        "<section id='solutions'><h2>Solutions</h2><p class='note'>The first solutions of the data with the probability "
        "that the model gives each step: that the solution is right so far. A cross marks a step on the wrong side of "
        "50 %.</p>\n<div class='tally'>",
        f);
    for (size_t i = 0; i < h->solution_count; i++) {
        size_t first = 0;
        while (strcmp(h->solutions[first].when, h->solutions[i].when)) first++;
        if (first == i) solution_tally(f, h, h->solutions[i].when);
    }
    fputs("</div>\n", f);
    size_t shown = 0;
    for (size_t i = 0; i < h->solution_count && shown < SOLUTIONS_SHOWN; i++) {
        size_t first = 0;
        while (!solution_same(&h->solutions[first], &h->solutions[i])) first++;
        if (first == i) solution_article(f, h, i, ++shown);
    }
    fputs("</section>\n", f);
}

#endif
