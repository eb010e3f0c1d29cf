/* chart.h - small SVG charts of a run's curves.
 *
 * Covers scales, ticks, smoothing, downsampling of long series, gaps and direct labels. Every input can be drawn: one
 * point, no finite point, equal values, a million steps. Colours come from the page's CSS classes (grid, tick, raw,
 * line, band, dot, end, with a0 for the first and a1 for the second curve), so one drawing serves light and dark
 * themes.
 *
 *     Chart c = {.lines = {{.mid = history_find(&history, "reward")}}, .count = 1, .smooth = true, .x0 = 1, .x1 = 200};
 *     chart_svg(f, &c);        // <svg>...</svg>
 *
 * Long series are downsampled with M4 (Jugel et al., "M4: a visualization-oriented time series data aggregation", VLDB
 * 2014): the first, lowest, highest and last point of every pixel column give the same picture as all points.
 */
#ifndef LLMC_REPORT_CHART_H
#define LLMC_REPORT_CHART_H

#include "../base/error.h" /* xcalloc */
#include "chart_text.h"    /* chart_tick, chart_value */
#include "history.h"       /* Series */

typedef struct ChartLine {
    const Series *mid;
    const Series *low, *high; /* edges of a band around mid: NULL, or with the same steps as mid */
    const char *name;         /* label, not escaped: "training"; NULL if the chart has one curve */
} ChartLine;

enum { CHART_LINES = 26, CHART_COLOURS = 8, CHART_DASHES = 5 };

typedef struct Chart {
    ChartLine lines[CHART_LINES];
    int count;
    bool letters;     /* curves of several runs: the end of each has its name, a letter, and no value */
    const char *unit; /* along the y axis */
    bool share;       /* values in [0, 1], shown as percentages; the axis begins at 0 */
    bool zero;        /* the axis begins at 0 if no value is negative */
    bool log;    /* logarithmic axis if the values are positive and span three decades, or a factor of 20 with a band */
    bool smooth; /* noisy data: raw values are faint, with a moving average over them */
    bool wide;
    double x0, x1; /* first and last step of the run */
} Chart;

typedef struct ChartScale {
    double left, right, top, bottom; /* plot area, in units of the drawing */
    double x0, x1, y0, y1;           /* y0, y1 are exponents of ten when log */
    double tick;                     /* distance between two labelled values of y */
    bool log;
} ChartScale;

/* Whether a moving average is drawn over the raw values: only if there are enough of them. */
static inline bool chart_smoothed(const Chart *c, const Series *s) { return c->smooth && s->count >= 25; }

/* ---- scales ---- */

/* Returns a round distance between ticks (1, 2 or 5 times a power of ten) that gives about `most` intervals at most. */
static inline double chart_round(double range, int most) {
    const double raw = range / most, power = pow(10, floor(log10(raw))), digit = raw / power;
    return power * (digit <= 1.0001 ? 1 : digit <= 2.0001 ? 2 : digit <= 5.0001 ? 5 : 10);
}

typedef struct ChartPoint {
    double x, y; /* in units of the drawing */
} ChartPoint;

/* The x coordinate of a step and the y coordinate of a value, in units of the drawing. */
static inline double chart_x(const ChartScale *s, double x) {
    return s->left + (s->right - s->left) * (x - s->x0) / (s->x1 - s->x0);
}

static inline double chart_y(const ChartScale *s, double y) {
    if (s->log) y = y > 0 ? log10(y) : s->y0;
    return s->bottom - (s->bottom - s->top) * (y - s->y0) / (s->y1 - s->y0);
}

/* Extends [*low, *high] by the finite values of a series; returns their number. */
static inline size_t chart_range(const Series *s, double *low, double *high) {
    size_t finite = 0;
    if (!s) return 0;
    for (size_t i = 0; i < s->count; i++)
        if (isfinite(s->values[i])) {
            if (s->values[i] < *low) *low = s->values[i];
            if (s->values[i] > *high) *high = s->values[i];
            finite++;
        }
    return finite;
}

/* Values beyond +-1e150 would overflow the arithmetic of the axis; they are drawn at its edge. */
static inline double chart_clamp(double v) { return v > 1e150 ? 1e150 : v < -1e150 ? -1e150 : v; }

/* Index of the last finite point of a series, or -1. */
static inline ptrdiff_t chart_last(const Series *s) {
    for (ptrdiff_t i = (ptrdiff_t)s->count - 1; i >= 0; i--)
        if (isfinite(s->values[i])) return i;
    return -1;
}

/* The room at the right of the curves, for their names and last values, which chart_ends() writes there. */
static inline double chart_margin(const Chart *c) {
    size_t longest = 0;
    for (int i = 0; i < c->count && !c->letters; i++) {
        const ptrdiff_t last = c->lines[i].mid ? chart_last(c->lines[i].mid) : -1;
        char text[32] = "";
        if (last >= 0) chart_value(c->lines[i].mid->values[last], c->share, text);
        if (strlen(text) > longest) longest = strlen(text);
    }
    return fmax(c->count > 1 ? 58 : 44, 7.4 * (double)longest); /* a character of the values is about 7.4 wide */
}

/* Computes the layout and the scales; false if there is no finite value to draw. */
static inline bool chart_scale(const Chart *c, ChartScale *s) {
    double low = INFINITY, high = -INFINITY;
    size_t finite = 0;
    for (int i = 0; i < c->count; i++) {
        finite += chart_range(c->lines[i].mid, &low, &high);
        chart_range(c->lines[i].low, &low, &high);
        chart_range(c->lines[i].high, &low, &high);
    }
    *s = (ChartScale){.left = 40,
                      .right = (c->wide ? 760 : 360) - chart_margin(c),
                      .top = 22,
                      .bottom = c->wide ? 216 : 156,
                      .x0 = c->x0,
                      .x1 = c->x1,
                      .y1 = 1};
    if (!(s->x1 > s->x0)) { /* a single step: centre it */
        s->x0 -= 1;
        s->x1 = s->x0 + 2;
    }
    if (!finite) return false;
    low = chart_clamp(low);
    high = chart_clamp(high);
    s->log = c->log && low > 0 && high / low >= (c->lines[0].low || c->lines[0].high ? 20 : 1000);
    const int most = c->wide ? 6 : 5;
    if (s->log) {
        s->y0 = floor(log10(low) + 1e-9);
        s->y1 = ceil(log10(high) - 1e-9);
        s->tick = ceil((s->y1 - s->y0) / most);
        return true;
    }
    if ((c->share || c->zero) && low > 0) low = 0;
    if (c->share && high > 0.5 && high < 1) high = 1;
    if (!(high > low)) {
        const double pad = low ? fabs(low) / 2 : 0.5;
        high += pad;
        if (low) low -= pad;
    }
    s->tick = chart_round(high - low, most);
    s->y0 = floor(low / s->tick + 1e-6) * s->tick;
    s->y1 = ceil(high / s->tick - 1e-6) * s->tick;
    return true;
}

/* ---- smoothing ---- */

/* One pass of a centred moving average of half-width r over n values. Near the ends the window shrinks to stay centred,
 * but to no less than half the width, so that a single last value does not bend the end of the curve. Non-finite values
 * are excluded from the average and stay NaN. */
static inline void chart_average(const double *v, double *out, size_t n, size_t r) {
    double *sum = (double *)xcalloc(n + 1, sizeof *sum), *count = (double *)xcalloc(n + 1, sizeof *count);
    for (size_t i = 0; i < n; i++) {
        const bool good = isfinite(v[i]);
        sum[i + 1] = sum[i] + (good ? v[i] : 0);
        count[i + 1] = count[i] + good;
    }
    for (size_t i = 0; i < n; i++) {
        const size_t edge = i < n - 1 - i ? i : n - 1 - i, h = edge > r ? r : edge < (r + 1) / 2 ? (r + 1) / 2 : edge;
        const size_t from = i > h ? i - h : 0, to = i + h + 1 < n ? i + h + 1 : n;
        out[i] = isfinite(v[i]) ? (sum[to] - sum[from]) / (count[to] - count[from]) : NAN;
    }
    free(sum);
    free(count);
}

/* Returns the smoothed values of s: two passes, each over a twentieth of the points. The caller frees them. */
static inline double *chart_smooth(const Series *s) {
    double *once = (double *)xcalloc(s->count, sizeof *once), *twice = (double *)xcalloc(s->count, sizeof *twice);
    const size_t r = s->count / 40 + 1;
    chart_average(s->values, once, s->count, r);
    chart_average(once, twice, s->count, r);
    free(once);
    return twice;
}

/* ---- drawing ---- */

typedef struct ChartPen {
    FILE *f;
    const ChartScale *scale;
    const Series *series;
    const double *values;
    size_t first, low, high, last; /* points of the current pixel column */
    bool any, down;                /* the column has points; the path has begun */
} ChartPen;

/* Draws the points of the current pixel column, in their order. */
static inline void chart_pen_flush(ChartPen *p) {
    if (!p->any) return;
    const size_t inner[2] = {p->low < p->high ? p->low : p->high, p->low < p->high ? p->high : p->low};
    const size_t order[4] = {p->first, inner[0], inner[1], p->last};
    for (int i = 0; i < 4; i++) {
        if (i && order[i] == order[i - 1]) continue;
        fprintf(p->f, "%c%.1f %.1f", p->down ? 'L' : 'M', chart_x(p->scale, (double)p->series->steps[order[i]]),
                chart_y(p->scale, chart_clamp(p->values[order[i]])));
        p->down = true;
    }
    p->any = false;
}

/* Writes a path through values[i] at the steps of s. A gap of non-finite values breaks the path if it is wide enough to
 * be visible. An isolated point is drawn as a dot (a line of length 0 with round ends). */
static inline void chart_path(FILE *f, const ChartScale *scale, const Series *s, const double *values,
                              const char *class, int curve) {
    ChartPen p = {.f = f, .scale = scale, .series = s, .values = values};
    fprintf(f, "<path class='%s%s a%d' d='", class, s->count > 1500 ? " dense" : "", curve % CHART_COLOURS);
    bool gap = false, alone = true;
    double previous = 0;
    for (size_t i = 0; i < s->count; i++) {
        if (!isfinite(values[i])) {
            gap = true;
            continue;
        }
        const double x = chart_x(scale, (double)s->steps[i]);
        if ((p.any || p.down) && gap && x - previous > 1.5) {
            chart_pen_flush(&p);
            if (alone) fputs("h0", f);
            p.down = false;
            alone = true;
        } else if (p.any || p.down) alone = false;
        if (p.any && floor(x) != floor(previous)) chart_pen_flush(&p);
        if (!p.any) {
            p.first = p.low = p.high = i;
            p.any = true;
        }
        if (values[i] < values[p.low]) p.low = i;
        if (values[i] > values[p.high]) p.high = i;
        p.last = i;
        previous = x;
        gap = false;
    }
    chart_pen_flush(&p);
    if (p.down && alone) fputs("h0", f);
    fputs("'/>", f);
}

/* Draws the area between a line's low and high series, one polygon for each run of finite points. */
static inline void chart_band(FILE *f, const ChartScale *scale, const ChartLine *line, int curve) {
    const Series *low = line->low ? line->low : line->mid, *high = line->high ? line->high : line->mid;
    if (low == high || low->count != high->count) return;
    fprintf(f, "<path class='band a%d' d='", curve);
    for (size_t i = 0; i < low->count;) {
        size_t end = i;
        /* for each pixel column: x, the lowest low, the highest high */
        double *x = (double *)xcalloc(low->count - i, 3 * sizeof *x), *y = x + (low->count - i),
               *z = y + (low->count - i);
        size_t n = 0;
        for (; end < low->count && isfinite(low->values[end]) && isfinite(high->values[end]); end++) {
            const double at = chart_x(scale, (double)low->steps[end]);
            const double down = chart_y(scale, chart_clamp(low->values[end])),
                         up = chart_y(scale, chart_clamp(high->values[end]));
            if (n && floor(at) == floor(x[n - 1])) {
                if (down > y[n - 1]) y[n - 1] = down;
                if (up < z[n - 1]) z[n - 1] = up;
            } else {
                x[n] = at;
                y[n] = down;
                z[n++] = up;
            }
        }
        for (size_t k = 0; k < n; k++) fprintf(f, "%c%.1f %.1f", k ? 'L' : 'M', x[k], y[k]);
        for (size_t k = n; k-- > 0;) fprintf(f, "L%.1f %.1f", x[k], z[k]);
        if (n) fputc('z', f);
        free(x);
        while (end < low->count && !(isfinite(low->values[end]) && isfinite(high->values[end]))) end++;
        i = end;
    }
    fputs("'/>", f);
}

/* Sets *at to tick i of an axis from low to high, at a multiple of `tick`; false: there is none. Ticks are counted, because a
 * value may be so large that another tick does not change it. */
static inline bool chart_tick_at(double low, double high, double tick, int i, double *at) {
    *at = (ceil(low / tick) + i) * tick;
    return i <= 20 && *at <= high + tick * 1e-6;
}

/* Draws the grid, the labels of both axes and the unit. */
static inline void chart_axes(FILE *f, const Chart *c, const ChartScale *s) {
    char text[32];
    for (int i = 0;; i++) {
        const double v = s->y0 + i * s->tick;
        if (v > s->y1 + s->tick * 1e-6 || i > 20) break;
        const double value = s->log ? pow(10, v) : v, y = chart_y(s, value);
        if (s->log)
            snprintf(text, sizeof text, value < 1e-3 || value > 1e4 ? "1e%.0f" : "%g",
                     value < 1e-3 || value > 1e4 ? v : value);
        else chart_tick(v, s->tick, c->share, text);
        fprintf(f, "<path class='grid%s' d='M%.0f %.1fH%.0f'/>", i ? "" : " base", s->left, y, s->right);
        fprintf(f, "<text class='tick' x='%.0f' y='%.1f' text-anchor='end'>%s</text>", s->left - 5, y + 3.2, text);
    }
    double tick = chart_round(s->x1 - s->x0, c->wide ? 8 : 4);
    if (tick < 1) tick = 1; /* steps are integers */
    double v;
    for (int i = 0; chart_tick_at(s->x0, s->x1, tick, i, &v); i++) {
        const double x = chart_x(s, v);
        chart_tick(v, tick, false, text);
        fprintf(f, "<path class='grid base' d='M%.1f %.0fv3'/>", x, s->bottom);
        fprintf(f, "<text class='tick' x='%.1f' y='%.0f' text-anchor='middle'>%s</text>", x, s->bottom + 14, text);
    }
    fprintf(f, "<text class='axis' x='%.0f' y='%.0f'>step</text>", s->right + 16, s->bottom + 14);
    fprintf(f, "<text class='axis' x='%.0f' y='12'>%s%s</text>", s->left - 5, c->unit, s->log ? ", logarithmic" : "");
}

/* Moves the letter that belongs at letter[n] to where it overlaps none of the n letters before it: to the right in rows of three,
 * which grow away from the nearer end of the y axis. */
static inline void chart_letter(const ChartScale *s, ChartPoint *letter, int n) {
    const ChartPoint own = letter[n];
    const double up = own.y > (s->top + s->bottom) / 2 ? -11 : 11;
    for (int k = 0, i;; k++) {
        letter[n] = (ChartPoint){own.x + 9 * (k % 3), own.y + up * (double)(k / 3)};
        for (i = 0; i < n; i++)
            if (fabs(letter[i].x - letter[n].x) < 9 && fabs(letter[i].y - letter[n].y) < 11) break;
        if (i == n) return;
    }
}

/* Marks the end of the curve of each run with its letter. */
static inline void chart_letters(FILE *f, const Chart *c, const ChartScale *s) {
    ChartPoint letter[c->count];
    int n = 0;
    for (int i = 0; i < c->count; i++) {
        const Series *series = c->lines[i].mid;
        const ptrdiff_t last = series ? chart_last(series) : -1;
        if (last < 0) continue;
        letter[n] = (ChartPoint){chart_x(s, (double)series->steps[last]) + 4,
                                 chart_y(s, chart_clamp(series->values[last])) + 3.8};
        chart_letter(s, letter, n);
        fprintf(f, "<text class='last a%d' x='%.1f' y='%.1f'>%s</text>", i % CHART_COLOURS, letter[n].x, letter[n].y,
                c->lines[i].name);
        n++;
    }
}

/* Marks the end of each curve, with its name and last value next to it; labels do not overlap. */
static inline void chart_ends(FILE *f, const Chart *c, const ChartScale *s) {
    if (c->letters) {
        chart_letters(f, c, s);
        return;
    }
    double at[2] = {0, 0}, label[2] = {0, 0};
    ptrdiff_t last[2] = {-1, -1};
    for (int i = 0; i < c->count; i++) {
        last[i] = chart_last(c->lines[i].mid);
        if (last[i] >= 0) label[i] = at[i] = chart_y(s, chart_clamp(c->lines[i].mid->values[last[i]]));
    }
    const double apart = 25, half = c->count > 1 ? 12 : 0; /* a label with a name is two lines high */
    for (int i = 0; i < c->count; i++) label[i] = fmin(fmax(label[i], s->top + half), s->bottom - half);
    if (last[0] >= 0 && last[1] >= 0 && fabs(label[0] - label[1]) < apart) {
        const int upper = label[0] <= label[1] ? 0 : 1;
        const double middle = (label[0] + label[1]) / 2, lowest = s->bottom - half - apart / 2,
                     highest = s->top + half + apart / 2;
        const double held = fmin(fmax(middle, highest), lowest);
        label[upper] = held - apart / 2;
        label[!upper] = held + apart / 2;
    }
    for (int i = 0; i < c->count; i++) {
        if (last[i] < 0) continue;
        const Series *series = c->lines[i].mid;
        char text[32];
        chart_value(series->values[last[i]], c->share, text);
        fprintf(f, "<circle class='end a%d' cx='%.1f' cy='%.1f' r='2.6'/>", i,
                chart_x(s, (double)series->steps[last[i]]), at[i]);
        const double x = s->right + 7, y = label[i];
        if (c->lines[i].name)
            fprintf(f, "<text class='name a%d' x='%.0f' y='%.1f'>%s</text>", i, x, y - 2.5, c->lines[i].name);
        fprintf(f, "<text class='last a%d' x='%.0f' y='%.1f'>%s</text>", i, x, y + (c->lines[i].name ? 9 : 3.8), text);
    }
}

/* Writes the drawing as an svg element. If no value is finite, it contains a note instead of curves. */
static inline void chart_svg(FILE *f, const Chart *c) {
    ChartScale s;
    const bool any = chart_scale(c, &s);
    fprintf(f, "<svg viewBox='0 0 %d %d' aria-hidden='true'>", c->wide ? 760 : 360, c->wide ? 236 : 176);
    if (!any)
        fprintf(f, "<text class='axis' x='%.0f' y='%.0f' text-anchor='middle'>no finite value</text>",
                (s.left + s.right) / 2, (s.top + s.bottom) / 2);
    else {
        chart_axes(f, c, &s);
        for (int i = c->count - 1; i >= 0; i--) {
            const ChartLine *line = &c->lines[i];
            if (!line->mid) continue; /* the run does not have this metric */
            if (c->letters) fprintf(f, "<g class='d%d'>", i % CHART_DASHES);
            if (line->low || line->high) chart_band(f, &s, line, i);
            if (chart_smoothed(c, line->mid)) {
                double *smooth = chart_smooth(line->mid);
                chart_path(f, &s, line->mid, line->mid->values, "raw", i);
                chart_path(f, &s, line->mid, smooth, "line", i);
                free(smooth);
            } else chart_path(f, &s, line->mid, line->mid->values, "line", i);
            if (c->letters) fputs("</g>", f);
            if (line->mid->count <= 40 && !c->letters)
                for (size_t k = 0; k < line->mid->count; k++)
                    if (isfinite(line->mid->values[k]))
                        fprintf(f, "<circle class='dot a%d' cx='%.1f' cy='%.1f' r='1.7'/>", i,
                                chart_x(&s, (double)line->mid->steps[k]),
                                chart_y(&s, chart_clamp(line->mid->values[k])));
        }
        chart_ends(f, c, &s);
    }
    fputs("</svg>", f);
}

#endif
