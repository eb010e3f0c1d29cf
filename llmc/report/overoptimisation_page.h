/* overoptimisation_page.h - report section that plots proxy and gold reward against sqrt(KL).
 *
 * Each step is a point. The curve of Gao et al. (overoptimisation.h) is drawn through the points of each reward if the
 * fit succeeds. The section is omitted if the run has no objective/gold.
 *
 *     report_overoptimisation(f, &history);
 */
#ifndef LLMC_REPORT_OVEROPTIMISATION_PAGE_H
#define LLMC_REPORT_OVEROPTIMISATION_PAGE_H

#include "chart.h"            /* chart_y, ChartScale, chart_x, chart_round */
#include "chart_text.h"       /* chart_tick */
#include "history.h"          /* History */
#include "overoptimisation.h" /* GaoFit, gao_reward, gao_fit, overoptimisation_points */

/* Draws the points and the curve of one reward in the colour of curve `which`. Returns the y coordinate of its end. */
static inline double overoptimisation_draw(FILE *f, const ChartScale *s, const double *d, const double *R, size_t n,
                                           const GaoFit *fit, int which) {
    enum { POINTS = 96 };
    for (size_t i = 0; i < n; i++)
        fprintf(f, "<circle class='a%d' cx='%.1f' cy='%.1f' r='2' opacity='.35'/>", which, chart_x(s, d[i]),
                chart_y(s, R[i]));
    double end = n ? R[n - 1] : 0;
    if (fit->good) {
        fprintf(f, "<path class='line a%d' d='", which);
        for (int i = 0; i <= POINTS; i++) {
            const double x = fit->farthest * i / POINTS;
            fprintf(f, "%c%.1f %.1f", i ? 'L' : 'M', chart_x(s, x), chart_y(s, gao_reward(fit, x)));
        }
        fputs("'/>", f);
        end = gao_reward(fit, fit->farthest);
    }
    return chart_y(s, end);
}

/* Writes the names at the ends of both curves, apart from each other. */
static inline void overoptimisation_names(FILE *f, const ChartScale *s, double end[2], const char *const name[2]) {
    const double gap = 12 - fabs(end[1] - end[0]);
    const int upper = end[1] < end[0];
    if (gap > 0) {
        end[upper] -= gap / 2;
        end[!upper] += gap / 2;
    }
    for (int k = 0; k < 2; k++)
        fprintf(f, "<text class='name a%d' x='%.1f' y='%.1f'>%s</text>\n", k, s->right + 6, end[k] + 3, name[k]);
}

static inline void overoptimisation_axes(FILE *f, const ChartScale *s) {
    char text[32];
    double x, y;
    for (int i = 0; chart_tick_at(s->y0, s->y1, s->tick, i, &y); i++) {
        chart_tick(y, s->tick, false, text);
        fprintf(f, "<path class='grid' d='M%.1f %.1fH%.1f'/><text x='%.1f' y='%.1f' text-anchor='end'>%s</text>",
                s->left, chart_y(s, y), s->right, s->left - 6, chart_y(s, y) + 3, text);
    }
    const double step = chart_round(s->x1 - s->x0, 8);
    for (int i = 0; chart_tick_at(s->x0, s->x1, step, i, &x); i++) {
        chart_tick(x, step, false, text);
        fprintf(f, "<text x='%.1f' y='%.1f' text-anchor='middle'>%s</text>", chart_x(s, x), s->bottom + 14, text);
    }
    fprintf(f, "<text class='axis' x='%.1f' y='%.1f' text-anchor='end'>sqrt(KL), KL in nats per completion</text>\n",
            s->right, s->bottom + 28);
}

/* Writes the coefficients of one reward's curve and its maximum. */
static inline void overoptimisation_words(FILE *f, const GaoFit *fit, const char *name, int which) {
    if (!fit->good) {
        fprintf(f, "<p class='stats'><i class='a%d'>%s</i><span>no curve could be fitted</span></p>", which, name);
        return;
    }
    fprintf(f,
            "<p class='stats'><i class='a%d'>%s</i><span>R0 <b>%.3g</b></span><span>alpha <b>%.3g</b></span>"
            "<span>beta <b>%.3g</b></span><span>R&#178; <b>%.2f</b></span><span>highest <b>%.3g</b> at KL <b>%.3g</b>"
            "</span></p>",
            which, name, fit->R0, fit->alpha, fit->beta, fit->r2, fit->value, fit->peak * fit->peak);
}

/* Writes the section; nothing if proxy or gold has fewer than two points, or the KL is always zero. */
static inline void report_overoptimisation(FILE *f, const History *h) {
    static const char *const key[] = {"objective/scores", "objective/gold"}, *const name[] = {"proxy", "gold"};
    double *d[2], *R[2];
    size_t n[2];
    GaoFit fit[2];
    ChartScale s = {.left = 52, .right = 560, .top = 12, .bottom = 250, .y0 = INFINITY, .y1 = -INFINITY};
    for (int k = 0; k < 2; k++) {
        n[k] = overoptimisation_points(h, key[k], &d[k], &R[k]);
        fit[k] = gao_fit(d[k], R[k], n[k]);
        for (size_t i = 0; i < n[k]; i++) {
            s.x1 = fmax(s.x1, d[k][i]);
            s.y0 = fmin(s.y0, R[k][i]);
            s.y1 = fmax(s.y1, R[k][i]);
        }
    }
    if (n[0] > 1 && n[1] > 1 && s.x1 > 0) {
        if (s.y1 - s.y0 < 1e-9) {
            s.y0 -= 1;
            s.y1 += 1;
        }
        const double margin = 0.05 * (s.y1 - s.y0);
        s.y0 -= margin;
        s.y1 += margin;
        s.tick = chart_round(s.y1 - s.y0, 6);
        fputs(
            "<section><h2>Proxy and gold</h2>\n<p class='note'>The proxy reward is optimised; the gold reward measures the "
            "actual goal. Both are plotted against the policy's distance from the start. Curves: R(d) = R0 + d (alpha - "
            "beta log d), d = sqrt(KL), after Gao et al. 2022.</p>\n"
            "<div class='scroll'><svg viewBox='0 0 620 290' class='plot' role='img' aria-label='proxy and gold reward against "
            "the square root of the KL to the start'>",
            f);
        overoptimisation_axes(f, &s);
        double end[2];
        for (int k = 0; k < 2; k++) end[k] = overoptimisation_draw(f, &s, d[k], R[k], n[k], &fit[k], k);
        overoptimisation_names(f, &s, end, name);
        fputs("</svg></div>\n", f);
        for (int k = 0; k < 2; k++) overoptimisation_words(f, &fit[k], name[k], k);
        fputs("</section>\n", f);
    }
    for (int k = 0; k < 2; k++) free(d[k]), free(R[k]);
}

#endif
