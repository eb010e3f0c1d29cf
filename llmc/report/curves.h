/* curves.h - selection, order and captions of a report's curves.
 *
 * Related curves share one chart: "eval_loss" is drawn into the chart of "loss", and "completions/min_length" and
 * "max_length" form a band around "mean_length". Titles and groups come from curve_catalogue.h.
 *
 *     CurveList list = curve_list(&history);
 *     for (size_t i = 0; i < list.count; i++) curve_figure(f, &list.curves[i], i == 0);
 *     free(list.curves);
 */
#ifndef LLMC_REPORT_CURVES_H
#define LLMC_REPORT_CURVES_H

#include "../base/error.h"   /* xcalloc, xmalloc */
#include "../base/text.h"    /* text_string, TextBuffer, text_append, text_free */
#include "chart.h"           /* Chart, chart_range, ChartLine, chart_last, ... */
#include "chart_data.h"      /* chart_data */
#include "chart_text.h"      /* chart_value */
#include "curve_catalogue.h" /* CURVES_OPTIMISATION, CURVES_POLICY, CURVES_REWARD, CURVE_LOG, ... */
#include "history.h"         /* Series, History, history_find */
#include "html.h"            /* html_text */
#include "report_mix.h"      /* ShareFiles, shares_files */
#include <ctype.h>

typedef struct Curve {
    Chart chart;
    const CurveInfo *info;
    const char *key;  /* name of the chart's first series */
    CurveGroup group; /* section of the page */
    int rank, order;
    bool eval; /* has held-out values only */
} Curve;

typedef struct CurveList {
    Curve *curves;
    size_t count;
} CurveList;

/* Returns the series named like s with the first "mean" replaced by `word`, if it has the same steps as s, or NULL. */
static inline const Series *curve_sibling(const History *h, const Series *s, const char *word) {
    const char *at = strstr(s->key, "mean");
    if (!at || !strcmp(s->key, "mean_token_accuracy")) return NULL;
    const size_t size = strlen(s->key) + 8;
    char *key = (char *)xmalloc(size);
    snprintf(key, size, "%.*s%s%s", (int)(at - s->key), s->key, word, at + 4);
    const Series *found = history_find(h, key);
    free(key);
    return found && found->count == s->count && !memcmp(found->steps, s->steps, s->count * sizeof *s->steps) ? found
                                                                                                             : NULL;
}

/* Orders charts by group, then by row of the catalogue, then by the order of their first values; for qsort(3). */
static inline int curve_compare(const void *a, const void *b) {
    const Curve *x = (const Curve *)a, *y = (const Curve *)b;
    if (x->group != y->group) return x->group < y->group ? -1 : 1;
    if (x->rank != y->rank) return x->rank - y->rank;
    return x->order - y->order;
}

/* A metric's name without "eval_". */
static inline const char *curve_base(const char *key) { return strncmp(key, "eval_", 5) ? key : key + 5; }

/* Marks the series that are drawn elsewhere: in the chart of another one the edges of its band and held-out values, and in a
 * section of their own the shares of a mixture. */
static inline void curve_take(const History *h, bool *taken) {
    const ShareFiles mixed = shares_files(h);
    for (int k = 0; k < mixed.count; k++) {
        taken[mixed.share[k] - h->series] = true;
        if (mixed.epoch[k]) taken[mixed.epoch[k] - h->series] = true;
    }
    for (size_t i = 0; i < h->series_count; i++) {
        const Series *s = &h->series[i], *edges[2] = {curve_sibling(h, s, "min"), curve_sibling(h, s, "max")};
        for (int k = 0; k < 2; k++)
            if (edges[k]) taken[edges[k] - h->series] = true;
        if (curve_base(s->key) != s->key && history_find(h, curve_base(s->key))) taken[i] = true;
    }
}

/* Returns the chart of series `order` of the history, with its held-out values if there are any. */
static inline Curve curve_of(const History *h, size_t order) {
    const Series *s = &h->series[order];
    Curve c = {.key = s->key, .order = (int)order, .eval = curve_base(s->key) != s->key};
    c.info = curve_info(curve_base(s->key), &c.rank);
    c.group = c.info->group;
    const int flags = c.info->flags;
    c.chart = (Chart){.lines = {{.mid = s, .low = curve_sibling(h, s, "min"), .high = curve_sibling(h, s, "max")}},
                      .count = 1,
                      .unit = c.info->unit,
                      .share = flags & CURVE_SHARE,
                      .zero = flags & CURVE_ZERO,
                      .log = flags & CURVE_LOG,
                      .smooth = flags & CURVE_SMOOTH,
                      .x0 = (double)h->first_step,
                      .x1 = (double)h->last_step};
    double low = INFINITY, high = -INFINITY;
    if (c.chart.share && chart_range(s, &low, &high) && (low < 0 || high > 1))
        c.chart.share = false; /* not a share after all, e.g. a count */
    char *eval = (char *)xmalloc(strlen(s->key) + 6);
    sprintf(eval, "eval_%s", s->key);
    const Series *held_out = c.eval ? NULL : history_find(h, eval);
    if (held_out) {
        c.chart.lines[0].name = "training";
        c.chart.lines[1] = (ChartLine){.mid = held_out, .name = "held-out"};
        c.chart.count = 2;
    }
    free(eval);
    return c;
}

/* Returns all charts of a run in display order; the caller frees list.curves. */
static inline CurveList curve_list(const History *h) {
    CurveList list = {(Curve *)xcalloc(h->series_count, sizeof(Curve)), 0};
    bool *taken = (bool *)xcalloc(h->series_count, sizeof *taken), scored = false;
    curve_take(h, taken);
    for (size_t i = 0; i < h->series_count; i++)
        if (!taken[i]) list.curves[list.count++] = curve_of(h, i);
    free(taken);
    for (size_t i = 0; i < list.count; i++) scored |= list.curves[i].group <= CURVES_REWARD;
    if (!scored) /* supervised training: the policy's curves belong with the loss */
        for (size_t i = 0; i < list.count; i++)
            if (list.curves[i].group == CURVES_POLICY) list.curves[i].group = CURVES_OPTIMISATION;
    qsort(list.curves, list.count, sizeof *list.curves, curve_compare);
    return list;
}

/* Writes "min 0.12 at 14  max 0.97 at 188  last 0.96"; with two curves, the curve's name and no steps. */
static inline void curve_stats(FILE *f, const Chart *c, int curve) {
    const ChartLine *line = &c->lines[curve];
    const Series *s = line->mid;
    size_t low = SIZE_MAX, high = SIZE_MAX;
    for (size_t i = 0; i < s->count; i++) {
        if (!isfinite(s->values[i])) continue;
        if (low == SIZE_MAX || s->values[i] < s->values[low]) low = i;
        if (high == SIZE_MAX || s->values[i] > s->values[high]) high = i;
    }
    fputs("<p class='stats'>", f);
    if (line->name) fprintf(f, "<i class='a%d'>%s</i>", curve, line->name);
    if (low == SIZE_MAX) fprintf(f, "<span>not finite at any of %zu steps</span>", s->count);
    else {
        char a[32], b[32], z[32];
        chart_value(s->values[low], c->share, a);
        chart_value(s->values[high], c->share, b);
        chart_value(s->values[chart_last(s)], c->share, z);
        if (line->name) fprintf(f, "<span>min <b>%s</b></span><span>max <b>%s</b></span>", a, b);
        else
            fprintf(f, "<span>min <b>%s</b> at %lld</span><span>max <b>%s</b> at %lld</span>", a,
                    (long long)s->steps[low], b, (long long)s->steps[high]);
        fprintf(f, "<span>last <b>%s</b></span>", z);
    }
    fputs("</p>", f);
}

/* Appends n bytes of a metric's name in words: "best_of/8" becomes "best of, 8". */
static inline void curve_words(TextBuffer *text, const char *name, size_t n) {
    for (size_t i = 0; i < n; i++)
        text_append(text, name[i] == '/' ? ", " : name[i] == '_' ? " " : name + i, name[i] == '/' ? 2 : 1);
}

/* Writes the title: "Loss" or, for held-out values alone, "Held-out loss". An abbreviation keeps its capitals. A * in the
 * catalogue's title stands for the part of the name that the pattern's * stands for. Without a title in the catalogue it is the
 * metric's name in words: "grad/noise_scale" becomes "Grad, noise scale". */
static inline void curve_title(FILE *f, const Curve *curve) {
    const char *title = curve->info->title, *pattern = curve->info->pattern, *name = curve_base(curve->key),
               *star = title ? strchr(title, '*') : NULL;
    TextBuffer buffer = {0};
    text_string(&buffer, "");
    if (!title) curve_words(&buffer, name, strlen(name));
    else if (!star) text_string(&buffer, title);
    else {
        text_append(&buffer, title, (size_t)(star - title));
        curve_words(&buffer, name + strcspn(pattern, "*"), strlen(name) - (strlen(pattern) - 1));
        text_string(&buffer, star + 1);
    }
    char *text = buffer.text;
    const bool capitals = *text && isupper((unsigned char)text[1]);
    if (curve->eval) fputs("Held-out ", f);
    if (!capitals && (unsigned char)*text < 0x80)
        *text = (char)(curve->eval ? tolower((unsigned char)*text) : toupper((unsigned char)*text));
    html_text(f, text);
    text_free(&buffer);
}

/* Writes the title and the metric's name. */
static inline void curve_name(FILE *f, const Curve *curve) {
    curve_title(f, curve);
    fputs(" <code>", f);
    html_text(f, curve->key);
    fputs("</code>", f);
}

/* Whether a chart has three values or more, all of which are equal; *value is theirs. */
static inline bool curve_constant(const Curve *curve, double *value) {
    double low = INFINITY, high = -INFINITY;
    size_t finite = 0, all = 0;
    for (int i = 0; i < curve->chart.count; i++) {
        const ChartLine *line = &curve->chart.lines[i];
        finite += chart_range(line->mid, &low, &high);
        all += line->mid->count;
        chart_range(line->low, &low, &high);
        chart_range(line->high, &low, &high);
    }
    *value = low;
    return finite >= 3 && finite == all && low == high;
}

/* Writes a chart with its caption and statistics. */
static inline void curve_figure(FILE *f, const Curve *curve, bool wide) {
    Chart c = curve->chart;
    fprintf(f, "<figure%s><figcaption><h4>", wide ? " class='wide'" : "");
    curve_name(f, curve);
    fprintf(f, "</h4><p>%s", curve->info->about);
    const bool low = c.lines[0].low, high = c.lines[0].high;
    if (low || high)
        fprintf(f, " The band goes %s.",
                low && high ? "from the minimum to the maximum"
                : low       ? "down to the minimum"
                            : "up to the maximum");
    fputs("</p></figcaption><div>", f);
    for (int narrow = 0; narrow <= wide; narrow++) { /* a wide chart has a second drawing for narrow windows */
        c.wide = wide && !narrow;
        chart_svg(f, &c);
        fputs("<script type='application/json'>", f);
        chart_data(f, &c);
        fputs("</script>", f);
    }
    for (int i = 0; i < c.count; i++) curve_stats(f, &c, i);
    fputs("</div></figure>\n", f);
}

#endif
