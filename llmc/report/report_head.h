/* report_head.h - top of a report's page: program, links to the sections, model, steps and running time.
 *
 *     report_head(f, &history, &curves, false);
 *
 * Writes from the doctype to the end of the page's header, with the style. The body and main elements stay open.
 */
#ifndef LLMC_REPORT_REPORT_HEAD_H
#define LLMC_REPORT_REPORT_HEAD_H

#include "chart_text.h" /* chart_value */
#include "curves.h"     /* CurveList */
#include "history.h"    /* History */
#include "html.h"       /* html_text */
#include "report_mix.h" /* shares_files */
#include "style.h"      /* keep: report_css, plot_js */
#include <time.h>

enum { REPORT_REFRESH = 60 }; /* seconds */

/* The heading of a program's report: what it does, or the program's own name. */
static inline const char *report_title(const char *program) {
    static const char *const known[][2] = {{"train_sft", "Supervised fine-tuning"},
                                           {"train_rm", "Reward model"},
                                           {"train_ppo", "Proximal policy optimisation"},
                                           {"train_dpo", "Direct preference optimisation"},
                                           {"train_grpo", "Group-relative policy optimisation"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(program, known[i][0])) return known[i][1];
    return program;
}

/* 161.3 -> "2 min 41 s" */
static inline void report_duration(double seconds, char *text, size_t size) {
    const long long s = seconds < 1e12 ? (long long)(seconds + 0.5) : 0;
    if (seconds < 9.95) snprintf(text, size, "%.1f s", seconds);
    else if (s < 60) snprintf(text, size, "%lld s", s);
    else if (s < 3600) snprintf(text, size, "%lld min %lld s", s / 60, s % 60);
    else snprintf(text, size, "%lld h %lld min", s / 3600, s / 60 % 60);
}

/* Formats a Unix time: "3 May 2026, 14:05:09"; false if there is none. */
static inline bool report_date(double time, char *text, size_t size) {
    const time_t at = time > 0 && time < 1e11 ? (time_t)time : 0;
    struct tm local;
    return at && localtime_r(&at, &local) && strftime(text, size, "%-d %B %Y, %H:%M:%S", &local);
}

/* Writes how many steps the run took, how long, and when it ended. */
static inline void report_facts(FILE *f, const History *h, bool running) {
    char text[64];
    if (!h->lines) {
        fputs("<span>No step has been logged.</span>", f);
        return;
    }
    if (h->first_step > 1)
        fprintf(f, "<span>steps <b>%lld to %lld</b></span>", (long long)h->first_step, (long long)h->last_step);
    else fprintf(f, "<span><b>%lld</b> step%s</span>", (long long)h->last_step, h->last_step == 1 ? "" : "s");
    report_duration(h->seconds, text, sizeof text);
    fprintf(f, "<span>%s <b>%s</b></span>", running ? "running for" : "took", text);
    const double per_step = h->seconds / (double)h->lines;
    if (per_step > 0) {
        chart_value(per_step < 1 ? 1e3 * per_step : per_step, false, text);
        fprintf(f, "<span><b>%s %s</b> per step</span>", text, per_step < 1 ? "ms" : "s");
    }
    if (report_date(h->finished_at, text, sizeof text))
        fprintf(f, "<span>%s <b>%s</b></span>", running ? "still running; last step" : "ended", text);
}

/* Writes the page up to the beginning of its main element. The page loads nothing, and its script and style are those
 * that it holds. While the run goes on, it reloads itself every REPORT_REFRESH seconds. */
static inline void report_begin(FILE *f, const char *title, bool running) {
    fputs(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'; script-src "
        "'unsafe-inline'\"><meta name='viewport' content='width=device-width,initial-scale=1'>",
        f);
    if (running) fprintf(f, "<meta http-equiv='refresh' content='%d'>", REPORT_REFRESH);
    fputs("<title>", f);
    html_text(f, title);
    fprintf(f, "</title>\n<style>\n%s</style>\n<script>\n%s</script></head>\n<body><main>\n", report_css(), plot_js());
}

/* Writes the end of a page that report_begin() began. */
static inline void report_end(FILE *f, const char *script) {
    fprintf(f, "</main>\n<script>\n%s</script>\n</body></html>\n", script);
}

/* Writes the page from its first byte to the end of the header. running: the run has not ended. */
static inline void report_head(FILE *f, const History *h, const CurveList *curves, bool running) {
    const char *program = h->program ? h->program : "run", *title = report_title(program);
    report_begin(f, title, running);
    fputs("<header><div class='kicker'><span class='mono'>", f);
    html_text(f, program);
    fputs("</span><nav>", f);
    if (h->final.count || curves->count) fputs("<a href='#numbers'>Numbers</a>", f);
    if (curves->count) fputs("<a href='#curves'>Curves</a>", f);
    if (shares_files(h).count) fputs("<a href='#mixture'>Mixture</a>", f);
    if (h->sample_count) fputs("<a href='#samples'>Samples</a>", f);
    if (h->pair_count) fputs("<a href='#pairs'>Pairs</a>", f);
    if (h->solution_count) fputs("<a href='#solutions'>Solutions</a>", f);
    if (h->rollouts && h->rollouts->count) fputs("<a href='#rollouts'>Rollouts</a>", f);
    if (json_array_size(h->starts)) fputs("<a href='#run'>Run</a>", f);
    if (json_array_size(json_object_get(h->end, "warnings"))) fputs("<a href='#warnings'>Warnings</a>", f);
    if (h->config.count) fputs("<a href='#configuration'>Configuration</a>", f);
    fputs("</nav></div>\n<h1>", f);
    html_text(f, title);
    fputs("</h1>\n", f);
    for (size_t i = 0; i < h->header.count; i++) {
        fputs("<p class='lead'>", f);
        html_text(f, h->header.rows[i].name);
        fputs("</p>\n", f);
    }
    fputs("<p class='facts'>", f);
    report_facts(f, h, running);
    fputs("</p></header>\n", f);
}

#endif
