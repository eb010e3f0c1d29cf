/* report.h - self-contained HTML report of a run.
 *
 * The page uses neither the network nor other files. It shows, from top to bottom: program, run time and model; the
 * final numbers, before and after; the curves in groups; the shares of a mixture's files; completions of the same prompts
 * side by side, before on the left and after on the right, with their rewards; preference pairs with the scores of both
 * answers; labelled solutions with the scores of their steps; the facts of the run; the configuration; all metrics as a
 * table. Curves are SVG. A short script adds the values under the pointer; without it the page is complete. The colours,
 * light or dark, follow the reader's system.
 *
 *     if (!report_write(&history, "run/report.html", false, &e)) die("%s", e.text);
 *
 * Every History can be written, also one without steps or samples or with a single point. All text that is not part of
 * the program goes through html_text().
 */
#ifndef LLMC_REPORT_REPORT_H
#define LLMC_REPORT_REPORT_H

#include "../base/error.h"         /* Error, checked_object, die */
#include "../base/io.h"            /* Writer, writer_abort, writer_open, writer_commit, ... */
#include "chart_text.h"            /* chart_value */
#include "curve_catalogue.h"       /* CurveGroup, curve_group_name */
#include "curves.h"                /* CurveList, curve_constant, curve_figure, curve_list, ... */
#include "history.h"               /* History */
#include "overoptimisation_page.h" /* report_overoptimisation */
#include "report_controls.h"       /* report_axes, report_controls */
#include "report_head.h"           /* report_end, report_head */
#include "report_length.h"         /* report_length */
#include "report_mix.h"            /* report_mix */
#include "report_pairs.h"          /* report_pairs */
#include "report_rollouts.h"       /* report_rollouts */
#include "report_run.h"            /* report_run */
#include "report_samples.h"        /* report_samples */
#include "report_solutions.h"      /* report_solutions */
#include "report_tables.h"         /* report_all, report_config, report_final */
#include "style.h"                 /* keep: report_js, rollouts_js */

/* Writes curves first ... end-1 that are constant, on one line. */
static inline void report_constants(FILE *f, const CurveList *curves, size_t first, size_t end) {
    bool any = false;
    for (size_t i = first; i < end; i++) {
        double value;
        char text[32];
        if (!curve_constant(&curves->curves[i], &value)) continue;
        fputs(any ? "; " : "<p class='note constants'>The same at every step: ", f);
        curve_name(f, &curves->curves[i]);
        chart_value(value, curves->curves[i].chart.share, text);
        fprintf(f, " <b>%s</b>", text);
        any = true;
    }
    if (any) fputs(".</p>\n", f);
}

/* Writes the charts of all curves under the headings of their groups; the first chart is wide. */
static inline void report_curves(FILE *f, const History *h, const CurveList *curves) {
    if (!curves->count) return;
    fputs(
        "<section id='curves'><h2>Curves</h2><p class='note'>Faint line: raw values. Strong line: moving average. The "
        "number at a curve's end is its last value.</p>\n",
        f);
    report_controls(f, false);
    report_axes(f, h);
    size_t drawn = 0;
    for (size_t i = 0; i < curves->count;) {
        const CurveGroup group = curves->curves[i].group;
        size_t end = i;
        bool open = false;
        fprintf(f, "<h3>%s</h3>\n", curve_group_name(group));
        for (; end < curves->count && curves->curves[end].group == group; end++) {
            double value;
            if (curve_constant(&curves->curves[end], &value)) continue;
            if (!open) fputs("<div class='curves'>\n", f);
            open = true;
            curve_figure(f, &curves->curves[end], drawn++ == 0);
        }
        if (open) fputs("</div>\n", f);
        report_constants(f, curves, i, end);
        i = end;
    }
    fputs("</section>\n", f);
}

/* Writes the page. running: the run has not ended. */
static inline void report_page(FILE *f, const History *h, bool running) {
    CurveList curves = curve_list(h);
    report_head(f, h, &curves, running);
    report_final(f, h, &curves);
    report_overoptimisation(f, h);
    report_length(f, h);
    report_curves(f, h, &curves);
    report_mix(f, h);
    report_samples(f, h);
    report_pairs(f, h);
    report_solutions(f, h);
    report_rollouts(f, h);
    if (h->pair_count || (h->rollouts && h->rollouts->count)) fprintf(f, "<script>\n%s</script>\n", rollouts_js());
    report_run(f, h);
    report_config(f, h);
    report_all(f, h);
    report_end(f, report_js());
    free(curves.curves);
}

/* Replaces a file by a page of n bytes; "-" is standard output. */
static inline bool report_file(const char *path, const char *page, size_t n, Error *e) {
    Writer w;
    if (!writer_open(&w, path, e)) return false;
    const bool ok = writer_write(&w, page, n, e) && writer_commit(&w, e);
    writer_abort(&w);
    return ok;
}

/* Writes the page to a file, which is replaced only when the page is complete; "-" is standard output. */
static inline bool report_write(const History *h, const char *path, bool running, Error *e) {
    char *page;
    size_t n;
    FILE *f = (FILE *)checked_object(open_memstream(&page, &n), "a stream in memory");
    report_page(f, h, running);
    if (fclose(f)) die("out of memory: the report needs more than %zu bytes", n);
    const bool ok = report_file(path, page, n, e);
    free(page);
    return ok;
}

/* Checks that a report can be written to `path`, without changing an existing file. */
static inline bool report_check(const char *path, Error *e) {
    Writer w;
    if (!writer_open(&w, path, e)) return false;
    writer_abort(&w);
    return true;
}

#endif
