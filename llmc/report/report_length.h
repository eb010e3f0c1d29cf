/* report_length.h - report section that plots the held-out accuracy against the length of the completions.
 *
 *     report_length(f, &history);
 *
 * Reinforcement learning on problems that need thought often makes the completions longer while they become right more
 * often (DeepSeek-R1: 2501.12948, fig. 3). Each evaluation is a point, joined in their order. The section is omitted with
 * fewer than three evaluations, or if the length does not change.
 */
#ifndef LLMC_REPORT_REPORT_LENGTH_H
#define LLMC_REPORT_REPORT_LENGTH_H

#include "chart.h"      /* chart_y, chart_x, ChartScale, chart_range, ... */
#include "chart_text.h" /* chart_tick */
#include "history.h"    /* Series, History, history_find, series_add */

/* The points of the evaluations that have both values, as series by their number: x the lengths, y the accuracies. */
static inline size_t length_points(const History *h, Series *x, Series *y) {
    const Series *length = history_find(h, "eval_completions/mean_length"), *right = history_find(h, "eval_accuracy");
    *x = *y = (Series){0};
    if (!length || !right) return 0;
    for (size_t i = 0, k = 0; i < length->count; i++) {
        while (k < right->count && right->steps[k] < length->steps[i]) k++;
        if (k == right->count || right->steps[k] != length->steps[i]) continue;
        if (!isfinite(length->values[i]) || !isfinite(right->values[k])) continue;
        series_add(x, length->steps[i], length->values[i]);
        series_add(y, length->steps[i], right->values[k]);
    }
    return x->count;
}

static inline void length_axes(FILE *f, const ChartScale *s) {
    char text[32];
    double x, y;
    for (int i = 0; chart_tick_at(0, s->y1, s->tick, i, &y); i++) {
        chart_tick(y, s->tick, true, text);
        fprintf(f, "<path class='grid' d='M%.1f %.1fH%.1f'/><text x='%.1f' y='%.1f' text-anchor='end'>%s</text>",
                s->left, chart_y(s, y), s->right, s->left - 6, chart_y(s, y) + 3, text);
    }
    const double step = chart_round(s->x1 - s->x0, 8);
    for (int i = 0; chart_tick_at(s->x0, s->x1, step, i, &x); i++) {
        chart_tick(x, step, false, text);
        fprintf(f, "<text x='%.1f' y='%.1f' text-anchor='middle'>%s</text>", chart_x(s, x), s->bottom + 14, text);
    }
    fprintf(f, "<text class='axis' x='%.1f' y='%.1f' text-anchor='end'>mean length, tokens</text>\n", s->right,
            s->bottom + 28);
}

/* Writes the section. */
static inline void report_length(FILE *f, const History *h) {
    Series x, y;
    double low = INFINITY, high = -INFINITY, least = INFINITY, most = -INFINITY;
    const size_t n = length_points(h, &x, &y);
    chart_range(&x, &low, &high);
    chart_range(&y, &least, &most);
    if (n > 2 && high - low > 1e-9) {
        const double margin = 0.05 * (high - low);
        ChartScale s = {.left = 52, .right = 560, .top = 12, .bottom = 250, .x0 = low - margin, .x1 = high + margin};
        s.y1 = most > 0 ? 1.05 * most : 1;
        s.tick = chart_round(s.y1, 6);
        fputs(
            "<section id='length'><h2>Accuracy and length</h2>\n<p class='note'>The held-out accuracy against the mean "
            "length of the completions; each evaluation is a point, the last one is filled.</p>\n"
            "<div class='scroll'><svg viewBox='0 0 620 290' class='plot' role='img' "
            "aria-label='held-out accuracy against the mean length of the completions'>",
            f);
        length_axes(f, &s);
        fputs("<path class='raw a0' d='", f);
        for (size_t i = 0; i < n; i++)
            fprintf(f, "%c%.1f %.1f", i ? 'L' : 'M', chart_x(&s, x.values[i]), chart_y(&s, y.values[i]));
        fputs("'/>", f);
        for (size_t i = 0; i < n; i++)
            fprintf(f, "<g><title>step %lld</title><circle class='a0' cx='%.1f' cy='%.1f' r='%d' opacity='%s'/></g>",
                    (long long)x.steps[i], chart_x(&s, x.values[i]), chart_y(&s, y.values[i]), i + 1 == n ? 5 : 3,
                    i + 1 == n ? "1" : ".5");
        fputs("</svg></div></section>\n", f);
    }
    free(x.steps), free(x.values), free(y.steps), free(y.values);
}

#endif
