/* chart_data.h - the points of a chart as JSON, for the page's script.
 *
 *     fputs("<script type='application/json'>", f);
 *     chart_data(f, &chart);
 *     fputs("</script>", f);
 *
 * report.js reads them and shows the values under the pointer.
 */
#ifndef LLMC_REPORT_CHART_DATA_H
#define LLMC_REPORT_CHART_DATA_H

#include "chart.h"   /* ChartScale, Chart, ChartLine, chart_scale, ... */
#include "history.h" /* Series */

enum { CHART_DATA_MOST = 240 }; /* points of a curve */

/* Chooses the points of a series that are written: the last finite one of each of CHART_DATA_MOST equal intervals of
 * steps. Stores their indices in kept (CHART_DATA_MOST) and returns their number. */
static inline size_t chart_data_keep(const ChartScale *scale, const Series *s, size_t *kept) {
    size_t n = 0;
    double interval = 0; /* interval of the last point in kept */
    for (size_t i = 0; i < s->count; i++) {
        if (!isfinite(s->values[i])) continue;
        const double part = ((double)s->steps[i] - scale->x0) / (scale->x1 - scale->x0);
        const double here = floor(part * (CHART_DATA_MOST - 1));
        if (n && here <= interval) n--;
        if (n == CHART_DATA_MOST) continue;
        kept[n++] = i;
        interval = here;
    }
    return n;
}

/* Writes the values at the n kept indices as an array. */
static inline void chart_data_values(FILE *f, const double *values, const size_t *kept, size_t n) {
    for (size_t k = 0; k < n; k++) {
        fputc(k ? ',' : '[', f);
        if (isfinite(values[kept[k]])) fprintf(f, "%.5g", values[kept[k]]);
        else fputs("null", f);
    }
    fputs(n ? "]" : "[]", f);
}

/* Writes a curve's steps, raw values and, if it is smoothed, smoothed values, and the edges of its band. */
static inline void chart_data_line(FILE *f, const Chart *c, const ChartScale *scale, const ChartLine *line) {
    const Series *s = line->mid, *low = line->low, *high = line->high;
    size_t kept[CHART_DATA_MOST];
    const size_t n = chart_data_keep(scale, s, kept);
    fputs("{\"x\":[", f);
    for (size_t k = 0; k < n; k++) fprintf(f, "%s%lld", k ? "," : "", (long long)s->steps[kept[k]]);
    fputs("],\"r\":", f);
    chart_data_values(f, s->values, kept, n);
    if (chart_smoothed(c, s)) {
        double *smooth = chart_smooth(s);
        fputs(",\"s\":", f);
        chart_data_values(f, smooth, kept, n);
        free(smooth);
    }
    if (low) {
        fputs(",\"low\":", f);
        chart_data_values(f, low->values, kept, n);
    }
    if (high) {
        fputs(",\"high\":", f);
        chart_data_values(f, high->values, kept, n);
    }
    fputc('}', f);
}

/* Writes {"box":[left,right,top,bottom],"x":[x0,x1],"y":[y0,y1],"log":0,"share":0,"lines":[...]}, or null if no value
 * is finite. A line is {"x":[...],"r":[...],"s":[...],"low":[...],"high":[...]},
 * without the parts that it does not have. */
static inline void chart_data(FILE *f, const Chart *c) {
    ChartScale s;
    if (!chart_scale(c, &s)) {
        fputs("null", f);
        return;
    }
    fprintf(f,
            "{\"box\":[%.0f,%.0f,%.0f,%.0f],\"x\":[%.17g,%.17g],\"y\":[%.9g,%.9g],\"log\":%d,\"share\":%d,\"lines\":[",
            s.left, s.right, s.top, s.bottom, s.x0, s.x1, s.y0, s.y1, s.log, c->share);
    for (int i = 0; i < c->count; i++) {
        if (i) fputc(',', f);
        chart_data_line(f, c, &s, &c->lines[i]);
    }
    fputs("]}", f);
}

#endif
