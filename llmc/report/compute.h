/* compute.h - accuracy by the compute that is spent on a prompt: JSON lines, and a page with two charts.
 *
 * A point is a method with a parameter, such as a majority of 8 samples: the tokens that were drawn for a prompt, those that a
 * reward model read, the FLOPs of both, and the accuracy with an interval. The first chart shows accuracy against FLOPs, a
 * curve for each method; the second the accuracy of each method at its largest compute by difficulty: the prompts are
 * divided into five equal parts by how often a plain sample is right (Snell et al. 2024, 2408.03314, section 3.2).
 *
 *     ComputePoint p[] = {{.method = "majority", .parameter = 8, .flops = 1e9, .accuracy = 0.5, .low = 0.4, .high = 0.6}};
 *     json_t *row = compute_json(&p[0]);
 *     compute_page(f, "sft.bin on tasks.shard", p, 1);
 */
#ifndef LLMC_REPORT_COMPUTE_H
#define LLMC_REPORT_COMPUTE_H

#include "../base/error.h"     /* xcalloc */
#include "../base/json_text.h" /* json_finite */
#include "chart.h"             /* chart_y, ChartScale, chart_x, CHART_COLOURS, ... */
#include "chart_text.h"        /* chart_tick */
#include "html.h"              /* html_text */
#include "report_head.h"       /* report_begin, report_end */
#include <jansson.h>

enum { COMPUTE_PARTS = 5 };

typedef struct ComputePoint {
    const char *method;
    double parameter;                 /* samples, solutions or tokens of thought; NaN: none */
    double tokens, prm_tokens, flops; /* of a prompt */
    double accuracy, low, high;       /* in [0, 1] */
    double part[COMPUTE_PARTS];       /* accuracy by difficulty, the easiest prompts first; NaN: unknown */
} ComputePoint;

static inline void compute_set(json_t *row, const char *key, double value) {
    json_object_set_new(row, key, json_finite(value));
}

/* A point as a row. */
static inline json_t *compute_json(const ComputePoint *p) {
    json_t *row = json_object(), *parts = json_array();
    json_object_set_new(row, "method", json_string(p->method));
    compute_set(row, "parameter", p->parameter);
    compute_set(row, "tokens", p->tokens);
    compute_set(row, "prm_tokens", p->prm_tokens);
    compute_set(row, "flops", p->flops);
    compute_set(row, "accuracy", p->accuracy);
    compute_set(row, "low", p->low);
    compute_set(row, "high", p->high);
    for (int i = 0; i < COMPUTE_PARTS; i++) json_array_append_new(parts, json_finite(p->part[i]));
    json_object_set_new(row, "quintiles", parts);
    return row;
}

/* Whether a point is the first of its method. */
static inline bool compute_first(const ComputePoint *p, int i) {
    for (int k = 0; k < i; k++)
        if (!strcmp(p[k].method, p[i].method)) return false;
    return true;
}

static inline void compute_axis_y(FILE *f, const ChartScale *s) {
    char text[32];
    for (double y = 0; y <= s->y1 + 1e-9; y += s->tick) {
        chart_tick(y, s->tick, true, text);
        fprintf(f, "<path class='grid' d='M%.1f %.1fH%.1f'/><text x='%.1f' y='%.1f' text-anchor='end'>%s</text>",
                s->left, chart_y(s, y), s->right, s->left - 6, chart_y(s, y) + 3, text);
    }
}

/* The name of a curve, and the height of the curve's end, which becomes that of the name. */
typedef struct ComputeName {
    const char *text;
    int curve;
    double y;
} ComputeName;

static inline int compute_name_order(const void *a, const void *b) {
    const double x = ((const ComputeName *)a)->y, y = ((const ComputeName *)b)->y;
    return (x > y) - (x < y);
}

/* Writes the names of n curves, each with a piece of its line, at the heights of their ends, or so far from there that they do
 * not overlap and none is below the axis. */
static inline void compute_names(FILE *f, const ChartScale *s, ComputeName *name, int n) {
    const double apart = 11, x = s->right + 8;
    qsort(name, (size_t)n, sizeof *name, compute_name_order);
    for (int i = 1; i < n; i++) name[i].y = fmax(name[i].y, name[i - 1].y + apart);
    for (int i = n; i-- > 0;) name[i].y = fmin(name[i].y, s->bottom - apart * (n - 1 - i));
    for (int i = 0; i < n; i++) {
        const int colour = name[i].curve % CHART_COLOURS;
        fprintf(f, "<g class='d%d'><path class='line a%d' d='M%.1f %.1fh20'/></g>", name[i].curve % CHART_DASHES,
                colour, x, name[i].y);
        fprintf(f, "<text class='name' style='fill:var(--a%d)' x='%.1f' y='%.1f'>", colour, x + 24, name[i].y + 3);
        html_text(f, name[i].text);
        fputs("</text>\n", f);
    }
}

/* One method's curve of n points x, y, with intervals if low is given. */
static inline void compute_curve(FILE *f, const ChartScale *s, const double *x, const double *y, const double *low,
                                 const double *high, int n, int curve) {
    const int colour = curve % CHART_COLOURS;
    int drawn = 0;
    fprintf(f, "<g class='d%d'><path class='line a%d' d='", curve % CHART_DASHES, colour);
    for (int i = 0; i < n; i++)
        if (isfinite(y[i])) fprintf(f, "%c%.1f %.1f", drawn++ ? 'L' : 'M', chart_x(s, x[i]), chart_y(s, y[i]));
    fputs("'/></g>", f);
    for (int i = 0; i < n; i++) {
        if (!isfinite(y[i])) continue;
        if (low && isfinite(low[i]))
            fprintf(f, "<path class='raw a%d' d='M%.1f %.1fV%.1f'/>", colour, chart_x(s, x[i]), chart_y(s, low[i]),
                    chart_y(s, high[i]));
        fprintf(f, "<circle style='fill:var(--a%d)' cx='%.1f' cy='%.1f' r='2.5'/>", colour, chart_x(s, x[i]),
                chart_y(s, y[i]));
    }
}

/* The largest value of y and of the intervals, as the top of an axis. */
static inline double compute_top(const ComputePoint *p, int n) {
    double top = 0;
    for (int i = 0; i < n; i++) {
        if (isfinite(p[i].high)) top = fmax(top, p[i].high);
        for (int k = 0; k < COMPUTE_PARTS; k++)
            if (isfinite(p[i].part[k])) top = fmax(top, p[i].part[k]);
    }
    return top > 0.5 || top <= 0 ? 1 : top;
}

/* Draws accuracy by FLOPs, a curve for each method, up to the place `right`. */
static inline void compute_by_flops(FILE *f, const ComputePoint *p, int n, double right) {
    ChartScale s = {.left = 46, .right = right, .top = 12, .bottom = 270, .x0 = INFINITY, .x1 = -INFINITY};
    double *x = (double *)xcalloc(4 * (size_t)n + 1, sizeof *x), *y = x + n, *low = y + n, *high = low + n;
    ComputeName *name = (ComputeName *)xcalloc((size_t)n + 1, sizeof *name);
    int curve = 0, names = 0;
    for (int i = 0; i < n; i++) {
        if (!(p[i].flops > 0)) continue;
        s.x0 = fmin(s.x0, log2(p[i].flops));
        s.x1 = fmax(s.x1, log2(p[i].flops));
    }
    if (s.x1 < s.x0) s.x0 = s.x1 = 0;
    if (s.x1 - s.x0 < 1) {
        s.x0 -= 0.5;
        s.x1 += 0.5;
    }
    s.y1 = compute_top(p, n);
    s.tick = chart_round(s.y1, 5);
    compute_axis_y(f, &s);
    for (double at = ceil(s.x0), step = ceil((s.x1 - s.x0) * 70 / (s.right - s.left)); at <= s.x1; at += step)
        fprintf(f, "<text x='%.1f' y='%.1f' text-anchor='middle'>2<tspan dy='-4' font-size='8'>%.0f</tspan></text>",
                chart_x(&s, at), s.bottom + 15, at);
    fprintf(f, "<text class='axis' x='%.1f' y='%.1f' text-anchor='end'>FLOPs per prompt</text>\n", s.right,
            s.bottom + 30);
    for (int i = 0; i < n; i++) {
        int count = 0;
        if (!compute_first(p, i)) continue;
        for (int k = i; k < n; k++) {
            if (strcmp(p[k].method, p[i].method) != 0 || !(p[k].flops > 0)) continue;
            x[count] = log2(p[k].flops);
            y[count] = p[k].accuracy;
            low[count] = p[k].low;
            high[count++] = p[k].high;
        }
        compute_curve(f, &s, x, y, low, high, count, curve);
        if (count && isfinite(y[count - 1]))
            name[names++] = (ComputeName){p[i].method, curve, chart_y(&s, y[count - 1])};
        curve++;
    }
    compute_names(f, &s, name, names);
    free(x), free(name);
}

/* Draws the last point of each method by difficulty, up to the place `right`. */
static inline void compute_by_difficulty(FILE *f, const ComputePoint *p, int n, double right) {
    static const char *const parts[COMPUTE_PARTS] = {"easiest", "2", "3", "4", "hardest"};
    const double x[COMPUTE_PARTS] = {1, 2, 3, 4, 5};
    ChartScale s = {.left = 46, .right = right, .top = 12, .bottom = 270, .x0 = 0.8, .x1 = 5.2, .y1 = 1, .tick = 0.2};
    ComputeName *name = (ComputeName *)xcalloc((size_t)n + 1, sizeof *name);
    int curve = 0, names = 0;
    compute_axis_y(f, &s);
    for (int i = 0; i < COMPUTE_PARTS; i++)
        fprintf(f, "<text x='%.1f' y='%.1f' text-anchor='middle'>%s</text>", chart_x(&s, x[i]), s.bottom + 14,
                parts[i]);
    for (int i = 0; i < n; i++) {
        int last = i;
        if (!compute_first(p, i)) continue;
        for (int k = i; k < n; k++)
            if (!strcmp(p[k].method, p[i].method)) last = k;
        compute_curve(f, &s, x, p[last].part, NULL, NULL, COMPUTE_PARTS, curve);
        if (isfinite(p[last].part[COMPUTE_PARTS - 1]))
            name[names++] = (ComputeName){p[i].method, curve, chart_y(&s, p[last].part[COMPUTE_PARTS - 1])};
        curve++;
    }
    compute_names(f, &s, name, names);
    free(name);
}

typedef void (*ComputeDraw)(FILE *f, const ComputePoint *p, int n, double right);

/* Writes a drawing in two widths, of which the style shows the one that fits the window. label: for screen readers. */
static inline void compute_figure(FILE *f, const ComputePoint *p, int n, const char *label, ComputeDraw draw) {
    static const struct {
        const char *name;
        int width;
    } sizes[] = {{"broad", 730}, {"narrow", 380}};
    for (int i = 0; i < 2; i++) {
        fprintf(f, "<svg viewBox='0 0 %d 320' class='plot %s' role='img' aria-label='%s'>", sizes[i].width,
                sizes[i].name, label);
        draw(f, p, n, sizes[i].width - 118);
        fputs("</svg>\n", f);
    }
}

/* Writes the page of n points. what: the model and the data. */
static inline void compute_page(FILE *f, const char *what, const ComputePoint *p, int n) {
    bool parts = false;
    for (int i = 0; i < n; i++) parts = parts || isfinite(p[i].part[0]);
    report_begin(f, "Test-time compute", false);
    fputs("<header><h1>Test-time compute</h1><p class='note'>", f);
    html_text(f, what);
    fputs(
        "</p></header>\n<section><h2>Accuracy by compute</h2>\n<p class='note'>FLOPs of the model and of the reward model for "
        "one prompt; a vertical line is a 95 % interval.</p>\n",
        f);
    compute_figure(f, p, n, "accuracy against the FLOPs of a prompt, a curve for each method", compute_by_flops);
    fputs("</section>\n", f);
    if (parts) {
        fputs(
            "<section><h2>Accuracy by difficulty</h2>\n<p class='note'>Fifths of the prompts by how often one sample is right; "
            "each method at its largest compute.</p>\n",
            f);
        compute_figure(f, p, n, "accuracy by difficulty, a curve for each method", compute_by_difficulty);
        fputs("</section>\n", f);
    }
    fputs(
        "<section><h2>Figures</h2><div class='scroll'><table class='all compute'><thead><tr><th>method</th><th>parameter</th>"
        "<th>tokens drawn</th><th>tokens read by the reward model</th><th>FLOPs</th><th>accuracy, %</th></tr></thead><tbody>\n",
        f);
    for (int i = 0; i < n; i++) {
        fputs("<tr><td>", f);
        html_text(f, p[i].method);
        if (isfinite(p[i].parameter)) fprintf(f, "</td><td>%g", p[i].parameter);
        else fputs("</td><td>", f);
        fprintf(f, "</td><td>%.1f</td><td>%.1f</td><td>%.3g</td>", p[i].tokens, p[i].prm_tokens, p[i].flops);
        if (isfinite(p[i].accuracy)) fprintf(f, "<td>%.1f</td></tr>\n", 100 * p[i].accuracy);
        else fputs("<td></td></tr>\n", f);
    }
    fputs("</tbody></table></div></section>\n", f);
    report_end(f, "");
}

#endif
