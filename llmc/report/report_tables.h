/* report_tables.h - tables of a report: final numbers, configuration, all metrics.
 *
 *     report_final(f, &history, &curves);  // before, after and the change; or the first and last values of the curves
 *     report_config(f, &history);          // the options in groups
 *     report_all(f, &history);             // first, last, minimum and maximum of each metric, folded away
 *
 * A table without rows is omitted, with its heading.
 */
#ifndef LLMC_REPORT_REPORT_TABLES_H
#define LLMC_REPORT_REPORT_TABLES_H

#include "chart.h"           /* chart_last, chart_range */
#include "chart_text.h"      /* chart_value */
#include "curve_catalogue.h" /* CURVE_HEADLINE */
#include "curves.h"          /* Curve, CurveList */
#include "history.h"         /* History, Series, HistoryRow */
#include "html.h"            /* html_text */

/* ---- final numbers ---- */

/* Splits "31.2 %" into its number, its count of decimals and its unit; false if it does not begin with a number. */
static inline bool report_number(const char *text, double *number, int *decimals, const char **unit) {
    char *end;
    if (!text || !strchr("+-.0123456789", text[0]) || !text[0]) return false;
    *number = strtod(text, &end);
    if (end == text || !isfinite(*number)) return false;
    const char *point = (const char *)memchr(text, '.', (size_t)(end - text));
    *decimals = point ? (int)strspn(point + 1, "0123456789") : 0;
    *unit = end + strspn(end, " ");
    return true;
}

/* Draws a bar from 0 to 100 % with an open dot at `before` and a filled one at `after`. */
static inline void report_bar(FILE *f, double before, double after) {
    const double x = 7 + 146 * before / 100, z = 7 + 146 * after / 100;
    fprintf(f,
            "<svg viewBox='0 0 160 14' aria-hidden='true'><path d='M7 7H153'/><path class='way' d='M%.1f 7H%.1f'/>"
            "<circle class='from' cx='%.1f' cy='7' r='4'/><circle cx='%.1f' cy='7' r='4.5'/></svg>",
            x, z, x, z);
}

/* Writes a row, with the change from before to after if both are numbers of one unit, and a bar for percentages. */
static inline void report_final_row(FILE *f, const char *name, const char *before, const char *after, bool first) {
    double a = 0, b = 0;
    int a_decimals = 0, b_decimals = 0;
    const char *a_unit = "", *b_unit = "";
    const bool same = report_number(before, &a, &a_decimals, &a_unit) &&
                      report_number(after, &b, &b_decimals, &b_unit) && !strcmp(a_unit, b_unit);
    const bool percent = same && a_unit[0] == '%';
    fprintf(f, "<tr%s><td>", first ? " class='first'" : "");
    html_text(f, name);
    fputs("</td><td class='before'>", f);
    if (before) html_text(f, before);
    fputs("</td><td class='after'>", f);
    if (after) html_text(f, after);
    fputs("</td><td class='change'>", f);
    if (same && a != b) {
        const int decimals = a_decimals > b_decimals ? a_decimals : b_decimals;
        char text[32];
        snprintf(text, sizeof text, "%.*f", decimals > 9 ? 9 : decimals, fabs(b - a));
        if (strtod(text, NULL) == 0) chart_value(fabs(b - a), false, text);
        fprintf(f, "%s%s", b > a ? "+" : "\xE2\x88\x92", text);
        if (percent) fputs(" points", f);
    }
    fputs("</td><td class='bar'>", f);
    if (percent && a >= 0 && a <= 100 && b >= 0 && b <= 100) report_bar(f, a, b);
    fputs("</td></tr>\n", f);
}

/* Writes the rows given to metrics_final(); if there are none, the first and last values of the headline curves. */
static inline void report_final(FILE *f, const History *h, const CurveList *curves) {
    if (!h->final.count && !curves->count) return;
    fprintf(f,
            "<section id='numbers'><h2>%s</h2><div class='scroll'><table class='final'><thead><tr><th></th><th>%s</th>"
            "<th>%s</th><th>change</th><th class='bar'></th></tr></thead><tbody>\n",
            h->final.count ? "Final numbers" : "First and last", h->final.count ? "before" : "first step",
            h->final.count ? "after" : "last step");
    for (size_t i = 0; i < h->final.count; i++)
        report_final_row(f, h->final.rows[i].name, h->final.rows[i].value, h->final.rows[i].after, i == 0);
    const size_t charts = h->final.count ? 0 : curves->count;
    for (size_t i = 0, shown = 0; i < charts && shown < 5; i++) {
        const Curve *c = &curves->curves[i];
        if (!(c->info->flags & CURVE_HEADLINE)) continue;
        const Series *s = c->chart.lines[c->chart.count - 1].mid;
        const ptrdiff_t last = chart_last(s);
        ptrdiff_t first = 0;
        while (first < last && !isfinite(s->values[first])) first++;
        if (last < 0) continue;
        char a[32], b[32], name[96];
        chart_value(s->values[first], c->chart.share, a);
        chart_value(s->values[last], c->chart.share, b);
        snprintf(name, sizeof name, "%s%s", c->info->title, c->eval || c->chart.count > 1 ? ", held-out" : "");
        report_final_row(f, name, a, b, shown++ == 0);
    }
    fputs("</tbody></table></div></section>\n", f);
}

/* ---- configuration ---- */

/* Writes the options in groups; a row without a value is the title of those that follow. */
static inline void report_config(FILE *f, const History *h) {
    if (!h->config.count) return;
    fputs("<section id='configuration'><h2>Configuration</h2><div class='config'>", f);
    for (size_t i = 0; i < h->config.count; i++) {
        const HistoryRow *row = &h->config.rows[i];
        if (!i || !row->value) fprintf(f, "%s<section>", i ? "</dl></section>" : "");
        if (!row->value) {
            fputs("<h3>", f);
            html_text(f, row->name);
            fputs("</h3>", f);
        }
        if (!i || !row->value) fputs("<dl>", f);
        if (!row->value) continue;
        fputs("<div><dt>", f);
        html_text(f, row->name);
        fputs("</dt><dd class='mono'>", f);
        html_text(f, row->value[0] ? row->value : "\xE2\x80\x93");
        fputs("</dd></div>", f);
    }
    fputs("</dl></section></div></section>\n", f);
}

/* ---- all metrics ---- */

/* Writes first, last, minimum and maximum of every metric, and the number of its finite values. */
static inline void report_all(FILE *f, const History *h) {
    if (!h->series_count) return;
    fputs(
        "<section><h2>All metrics</h2><details><summary>first, last, minimum and maximum of each</summary>"
        "<div class='scroll'><table class='all'><thead><tr><th>name</th><th>first</th><th>last</th><th>min</th><th>max</th>"
        "<th>values</th></tr></thead><tbody>\n",
        f);
    for (size_t i = 0; i < h->series_count; i++) {
        const Series *s = &h->series[i];
        double low = INFINITY, high = -INFINITY;
        const size_t finite = chart_range(s, &low, &high);
        const ptrdiff_t last = chart_last(s);
        ptrdiff_t first = 0;
        while (first < last && !isfinite(s->values[first])) first++;
        const double shown[4] = {last < 0 ? NAN : s->values[first], last < 0 ? NAN : s->values[last], low, high};
        fputs("<tr><td class='mono'>", f);
        html_text(f, s->key);
        fputs("</td>", f);
        for (int k = 0; k < 4; k++) {
            char text[32];
            chart_value(shown[k], false, text);
            fprintf(f, "<td>%s</td>", text);
        }
        fprintf(f, "<td>%zu", finite);
        if (finite < s->count) fprintf(f, " of %zu", s->count);
        fputs("</td></tr>\n", f);
    }
    fputs("</tbody></table></div></details></section>\n", f);
}

#endif
