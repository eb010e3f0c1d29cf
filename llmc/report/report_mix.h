/* report_mix.h - report section that shows what a mixture of training data was made of over the run.
 *
 *     report_mix(f, &history);
 *
 * The metrics mix/NAME/share are the shares of the files in the records drawn so far, mix/NAME/epoch the passes over each file.
 * The shares are drawn as layers that fill the height, in the order of the table. Files beyond the first SHARES_FILES are
 * curves. The section is omitted if the run has no mixture.
 */
#ifndef LLMC_REPORT_REPORT_MIX_H
#define LLMC_REPORT_REPORT_MIX_H

#include "../base/error.h" /* xstrdup */
#include "chart.h"         /* chart_y, ChartScale, CHART_COLOURS, chart_x */
#include "chart_text.h"    /* chart_value */
#include "history.h"       /* Series, History, history_find, series_at */
#include "html.h"          /* html_bytes, html_shown */

enum { SHARES_FILES = 26, SHARES_POINTS = 200 };

typedef struct ShareFiles {
    const Series *share[SHARES_FILES], *epoch[SHARES_FILES];
    int count;
} ShareFiles;

/* The name of a file in the name of its metric; *n is its length. */
static inline const char *shares_name(const Series *share, size_t *n) {
    *n = strlen(share->key) - strlen("mix/") - strlen("/share");
    return share->key + strlen("mix/");
}

static inline bool shares_is_share(const char *key) {
    const size_t n = strlen(key);
    return !strncmp(key, "mix/", 4) && n > 10 && !strcmp(key + n - 6, "/share");
}

/* The series of the files, at most SHARES_FILES, which are not drawn as curves of their own. */
static inline ShareFiles shares_files(const History *h) {
    ShareFiles all = {0};
    for (size_t i = 0; i < h->series_count && all.count < SHARES_FILES; i++) {
        const Series *s = &h->series[i];
        if (!shares_is_share(s->key)) continue;
        char *key = xstrdup(s->key);
        strcpy(key + strlen(key) - 6, "/epoch");
        all.epoch[all.count] = history_find(h, key);
        all.share[all.count++] = s;
        free(key);
    }
    return all;
}

/* The sum of the shares of files 0 ... k-1 at a point of the first one's series; 0 for those that have none. */
static inline double shares_below(const ShareFiles *m, int k, size_t point) {
    double sum = 0;
    for (int i = 0; i < k; i++) {
        const double v = series_at(m->share[i], m->share[0]->steps[point]);
        if (isfinite(v)) sum += v;
    }
    return sum;
}

/* Writes the layer of file k: its upper edge from left to right, then the lower one back. */
static inline void shares_layer(FILE *f, const ShareFiles *m, const ChartScale *s, int k) {
    const Series *first = m->share[0];
    const size_t n = first->count, every = (n + SHARES_POINTS - 1) / SHARES_POINTS;
    size_t n_name;
    const char *name = shares_name(m->share[k], &n_name);
    fprintf(f, "<g><title>");
    html_bytes(f, name, n_name);
    fprintf(f, "</title><path class='layer l%d' d='", k % CHART_COLOURS);
    for (int edge = 1; edge >= 0; edge--)
        for (size_t i = 0; i < n; i++) {
            const size_t p = edge ? i : n - 1 - i;
            if (p % every && p != n - 1) continue;
            fprintf(f, "%c%.1f %.1f", edge && !i ? 'M' : 'L', chart_x(s, (double)first->steps[p]),
                    chart_y(s, shares_below(m, k + edge, p)));
        }
    fputs("Z'/></g>", f);
}

/* Writes the names of the layers at their right ends, as far as there is room, and the axes. */
static inline void shares_labels(FILE *f, const ShareFiles *m, const ChartScale *s) {
    const size_t last = m->share[0]->count - 1;
    for (int k = 0; k < m->count; k++) {
        const double low = shares_below(m, k, last), high = shares_below(m, k + 1, last);
        size_t n;
        const char *name = shares_name(m->share[k], &n);
        const size_t shown = html_shown(name, 24);
        if (chart_y(s, low) - chart_y(s, high) < 11) continue;
        fprintf(f, "<text x='%.1f' y='%.1f'>", s->right + 6, (chart_y(s, low) + chart_y(s, high)) / 2 + 3.5);
        html_bytes(f, name, n < shown ? n : shown);
        fputs("</text>", f);
    }
    for (int k = 0; k <= 4; k++)
        fprintf(f, "<text x='%.1f' y='%.1f' text-anchor='end'>%d%%</text>", s->left - 6, chart_y(s, k / 4.0) + 3,
                25 * k);
    fprintf(
        f,
        "<text x='%.1f' y='%.1f'>%.0f</text><text x='%.1f' y='%.1f' text-anchor='end'>%.0f</text><text class='axis' "
        "x='%.1f' y='%.1f' text-anchor='middle'>step</text>",
        s->left, s->bottom + 14, s->x0, s->right, s->bottom + 14, s->x1, (s->left + s->right) / 2, s->bottom + 14);
}

static inline void shares_table(FILE *f, const ShareFiles *m) {
    fputs("<div class='scroll'><table class='all'><thead><tr><th scope='col'>file</th><th scope='col'>share of the "
          "records</th><th scope='col'>epochs</th></tr></thead><tbody>\n",
          f);
    for (int k = 0; k < m->count; k++) {
        const Series *share = m->share[k], *epoch = m->epoch[k];
        char a[32], b[32];
        size_t n;
        const char *name = shares_name(share, &n);
        chart_value(share->count ? share->values[share->count - 1] : NAN, true, a);
        chart_value(epoch && epoch->count ? epoch->values[epoch->count - 1] : NAN, false, b);
        fprintf(f, "<tr><td><i class='l%d'></i>", k % CHART_COLOURS);
        html_bytes(f, name, n);
        fprintf(f, "</td><td>%s</td><td>%s</td></tr>\n", a, b);
    }
    fputs("</tbody></table></div>\n", f);
}

/* Writes the section. */
static inline void report_mix(FILE *f, const History *h) {
    const ShareFiles m = shares_files(h);
    if (!m.count || !m.share[0]->count) return;
    const Series *first = m.share[0];
    ChartScale s = {.left = 52, .right = 370, .top = 12, .bottom = 200, .y1 = 1};
    s.x0 = (double)first->steps[0];
    s.x1 = (double)first->steps[first->count - 1];
    fputs(
        "<section id='mixture'><h2>Mixture</h2>\n<p class='note'>The shares of the files in the records that were drawn "
        "so far, and how many passes over each file they make.</p>\n",
        f);
    if (first->count > 1) {
        fputs(
            "<div class='scroll'><svg class='mix' viewBox='0 0 480 224' role='img' aria-label='shares of the files in the "
            "records drawn so far, by step; the last values are in the table'>",
            f);
        for (int k = 0; k < m.count; k++) shares_layer(f, &m, &s, k);
        shares_labels(f, &m, &s);
        fputs("</svg></div>\n", f);
    }
    shares_table(f, &m);
    fputs("</section>\n", f);
}

#endif
