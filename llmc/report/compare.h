/* compare.h - one HTML page with the curves of several runs over each other, the options in which they differ, and, if
 * they are stages of one model's training, the stages in their order.
 *
 *     Runs runs = {0};
 *     if (!runs_read(&runs, "a.jsonl", &e)) die("%s", e.text);
 *     runs_order(&runs);
 *     if (!compare_write(&runs, "page.html", &e)) die("%s", e.text);
 *
 * A run has a letter, a colour and a dash pattern, so that its curves can be identified without colour, too. Without its
 * script the page has static drawings by step and all tables; the script (compare.js) draws them by tokens or time, with
 * a logarithmic axis, or for a range of x. Each drawing is followed by its points as JSON:
 *
 *     {"unit":...,"share":0,"lines":[{"run":0,"step":[...],"tokens":[...],"time":[...],"value":[...]}]}
 */
#ifndef LLMC_REPORT_COMPARE_H
#define LLMC_REPORT_COMPARE_H

#include "../base/error.h"   /* checked_object, Error, die, xcalloc */
#include "chart.h"           /* Chart, chart_last, CHART_COLOURS, CHART_DASHES, ... */
#include "chart_text.h"      /* chart_value */
#include "curve_catalogue.h" /* curve_group_name */
#include "curves.h"          /* Curve, CurveList, curve_compare, curve_name, ... */
#include "history.h"         /* history_find, History, Series, series_at, ... */
#include "html.h"            /* html_text */
#include "report.h"          /* report_file */
#include "report_controls.h" /* report_controls */
#include "report_head.h"     /* report_begin, report_date, report_duration, report_end, ... */
#include "report_rollouts.h" /* report_rollouts */
#include "report_run.h"      /* run_string, run_cell, run_number */
#include "run_facts.h"       /* RunPhase, run_lineage_name, run_phase_name, RUN_PHASES */
#include "runs.h"            /* Runs, run_last_start, Run, RUNS_MOST, ... */
#include "style.h"           /* keep: compare_js, rollouts_js */

enum {
    COMPARE_POINTS = 400, /* most points of a curve */
    COMPARE_ALL = 40000,  /* points of the page, about */
    COMPARE_FEWEST = 40,  /* points of a curve, however many there are */
};

/* Writes a run's letter and a piece of its line. */
static inline void compare_key(FILE *f, int run) {
    fprintf(f,
            "<b class='key'>%c <svg class='d%d' viewBox='0 0 30 8' aria-hidden='true'><path class='line a%d' "
            "d='M1 4H29'/></svg></b>",
            'A' + run, run % CHART_DASHES, run % CHART_COLOURS);
}

static inline void compare_heads(FILE *f, const Runs *r) {
    for (int i = 0; i < r->count; i++) {
        fputs("<th>", f);
        compare_key(f, i);
        fputs("</th>", f);
    }
}

/* Writes the legend: a row for each run. */
static inline void compare_legend(FILE *f, const Runs *r) {
    fputs("<section id='runs'><h2>Runs</h2><div class='scroll'><table class='all'><thead><tr><th>run</th><th>metrics"
          "</th><th>program</th><th>version</th><th>started</th><th>status</th><th>last step</th><th>tokens/s</th></tr>"
          "</thead><tbody>\n",
          f);
    for (int i = 0; i < r->count; i++) {
        const Run *run = &r->runs[i];
        const json_t *start = run_last_start(run);
        char text[64] = "\xE2\x80\x93";
        const char *status = run_string(run->h.end, "status");
        fputs("<tr><td>", f);
        compare_key(f, i);
        fputs("</td>", f);
        run_cell(f, " class='mono'", run->name);
        run_cell(f, "", run_string(start, "program"));
        run_cell(f, "", run_string(start, "version"));
        report_date(run_number(start, "time"), text, sizeof text);
        run_cell(f, "", text);
        run_cell(f, "", run->cut ? "cut off in its last line" : status ? status : "without an end");
        const double speed = history_speed(&run->h);
        chart_value(speed > 0 ? speed : NAN, false, text);
        fprintf(f, "<td>%lld</td><td>%s</td></tr>\n", (long long)run->h.last_step, text);
    }
    fputs("</tbody></table></div></section>\n", f);
}

static inline const char *compare_value(const Run *run, const char *name) {
    return run_string(json_object_get(run_last_start(run), "args"), name);
}

/* Whether a run of the same program as `run` was given an option: then the program has it. An unknown program may be any. */
static inline bool compare_has(const Runs *r, const Run *run, const char *name) {
    const char *program = run_string(run_last_start(run), "program");
    for (int i = 0; i < r->count; i++) {
        const char *other = run_string(run_last_start(&r->runs[i]), "program");
        if ((!program || !other || !strcmp(program, other)) && compare_value(&r->runs[i], name)) return true;
    }
    return false;
}

/* Whether an option has different values in two runs whose programs have it. */
static inline bool compare_differs(const Runs *r, const char *name) {
    const char *first = NULL;
    for (int i = 0; i < r->count; i++) {
        const char *here = compare_value(&r->runs[i], name);
        if (!here && !compare_has(r, &r->runs[i], name)) continue;
        if (!here) here = "";
        if (first && strcmp(first, here)) return true;
        first = here;
    }
    return false;
}

/* Writes the options that do not have the same value in all runs whose programs have them. */
static inline void compare_options(FILE *f, const Runs *r) {
    json_t *names = (json_t *)checked_object(json_object(), "a JSON object");
    size_t records = 0, rows = 0;
    const char *name;
    json_t *value;
    for (int i = 0; i < r->count; i++) {
        json_t *args = json_object_get(run_last_start(&r->runs[i]), "args");
        records += args != NULL;
        json_object_foreach(args, name, value) json_object_set_new(names, name, json_null());
    }
    fputs("<section id='options'><h2>Options that differ</h2>\n", f);
    if (records < (size_t)r->count)
        fprintf(f, "<p class='note'>%zu of the %d files %s no record of the options.</p>\n", r->count - records,
                r->count, r->count - records == 1 ? "has" : "have");
    json_object_foreach(names, name, value) {
        if (!compare_differs(r, name)) continue;
        if (!rows++) {
            fputs("<div class='scroll'><table class='all'><thead><tr><th>option</th>", f);
            compare_heads(f, r);
            fputs("</tr></thead><tbody>\n", f);
        }
        fputs("<tr>", f);
        run_cell(f, " class='mono'", name);
        for (int i = 0; i < r->count; i++) run_cell(f, " class='mono'", compare_value(&r->runs[i], name));
        fputs("</tr>\n", f);
    }
    fputs(rows ? "</tbody></table></div></section>\n" : "<p class='note'>There are none.</p></section>\n", f);
    json_decref(names);
}

/* Writes the final numbers of each stage, in the order of the stages. */
static inline void compare_stages(FILE *f, const Runs *r) {
    fputs("<section id='stages'><h2>Stages</h2><p class='note'>In the order of the lineage: a stage goes on with the "
          "model of one above it.</p><div class='scroll'><table class='all'><thead><tr><th>stage</th><th>goes on from"
          "</th><th>number</th><th>before</th><th>after</th></tr></thead><tbody>\n",
          f);
    for (int i = 0; i < r->count; i++) {
        const Run *run = &r->runs[i];
        const json_t *final = json_object_get(run->h.end, "final");
        const size_t rows = json_array_size(final);
        char from[64] = "\xE2\x80\x93";
        for (int k = 0; k < i; k++)
            if (run_continues(&r->runs[k], run)) snprintf(from, sizeof from, "%c", 'A' + k);
        for (size_t k = 0; k < (rows ? rows : 1); k++) {
            const json_t *row = json_array_get(final, k);
            fputs("<tr><td>", f);
            if (!k) {
                compare_key(f, i);
                html_text(f, report_title(run->h.program ? run->h.program : run->name));
            }
            fprintf(f, "</td><td>%s</td>", k ? "" : from);
            run_cell(f, "", run_string(row, "name"));
            run_cell(f, "", run_string(row, "before"));
            run_cell(f, " class='after'", run_string(row, "after"));
            fputs("</tr>\n", f);
        }
    }
    fputs("</tbody></table></div></section>\n", f);
}

/* Writes the time of each phase in each run, with its share of the run's time. */
static inline void compare_phases(FILE *f, const Runs *r) {
    double all[RUNS_MOST] = {0}, any = 0;
    for (int i = 0; i < r->count; i++)
        for (int p = 0; p < RUN_PHASES; p++)
            all[i] += fmax(run_number(json_object_get(r->runs[i].h.end, "seconds"), run_phase_name((RunPhase)p)), 0);
    for (int i = 0; i < r->count; i++) any += all[i];
    if (!(any > 0)) return;
    fputs(
        "<section id='time'><h2>Time of each phase</h2><div class='scroll'><table class='all'><thead><tr><th>phase</th>",
        f);
    compare_heads(f, r);
    fputs("</tr></thead><tbody>\n", f);
    for (int p = 0; p < RUN_PHASES; p++) {
        fprintf(f, "<tr><td>%s</td>", run_phase_name((RunPhase)p));
        for (int i = 0; i < r->count; i++) {
            const double seconds =
                run_number(json_object_get(r->runs[i].h.end, "seconds"), run_phase_name((RunPhase)p));
            char text[64] = "\xE2\x80\x93", share[32] = "";
            if (seconds > 0) report_duration(seconds, text, sizeof text);
            if (seconds > 0) chart_value(seconds / all[i], true, share);
            fprintf(f, "<td>%s <span class='none'>%s</span></td>", text, share);
        }
        fputs("</tr>\n", f);
    }
    fputs("</tbody></table></div></section>\n", f);
}

/* ---- evaluations ---- */

/* Where the model of an evaluation comes from: the letter of the run that made it, "before" and the letter of the first
 * run that began with it, or the model's path. */
static inline void compare_evaluated(FILE *f, const Runs *r, const json_t *evaluation) {
    const char *name = run_string(evaluation, "lineage"), *model = run_string(evaluation, "model");
    char here[17];
    for (int i = 0; name && i < r->count; i++) {
        const json_t *lineage = json_object_get(run_last_start(&r->runs[i]), "lineage");
        const size_t n = json_array_size(lineage);
        if (!n) continue;
        run_lineage_name(lineage, n, here);
        if (!strcmp(here, name)) {
            compare_key(f, i);
            return;
        }
    }
    for (int i = 0; name && i < r->count; i++) {
        const json_t *lineage = json_object_get(run_last_start(&r->runs[i]), "lineage");
        const size_t n = json_array_size(lineage);
        if (!n) continue;
        run_lineage_name(lineage, n - 1, here);
        if (!strcmp(here, name)) {
            fprintf(f, "before <b class='key'>%c</b>", 'A' + i);
            return;
        }
    }
    html_text(f, model ? model : "another model");
}

/* Whether a field of an evaluation is a setting or the error of another field, and not a result. */
static inline bool compare_setting(const char *key) {
    static const char *const settings[] = {"seed", "samples", "temperature", "dropped", "cut", "bytes"};
    static const char *const ends[] = {"_error", "_low", "_high"};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        if (!strcmp(key, settings[i])) return true;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        const size_t n = strlen(key), m = strlen(ends[i]);
        if (n > m && !strcmp(key + n - m, ends[i])) return true;
    }
    return false;
}

/* Writes a result with its standard error, or with its interval. */
static inline void compare_result(FILE *f, const json_t *evaluation, const char *key) {
    char other[96], text[32], low[32], high[32];
    const double value = run_number(evaluation, key);
    chart_value(value, false, text);
    fprintf(f, "<td>%s", text);
    snprintf(other, sizeof other, "%.80s_low", key);
    const double from = run_number(evaluation, other);
    snprintf(other, sizeof other, "%.80s_high", key);
    const double to = run_number(evaluation, other);
    snprintf(other, sizeof other, "%.80s_error", key);
    const double error = run_number(evaluation, other);
    chart_value(from, false, low);
    chart_value(to, false, high);
    if (isfinite(from) && isfinite(to)) fprintf(f, " <span class='none'>%s to %s</span>", low, high);
    else if (isfinite(error)) {
        chart_value(error, false, text);
        fprintf(f, " <span class='none'>\xC2\xB1 %s</span>", text);
    }
    fputs("</td>", f);
}

/* The order of the evaluations' columns: that of the runs that made the models, others first. */
static inline int compare_place(const Runs *r, const json_t *evaluation) {
    const char *name = run_string(evaluation, "lineage");
    char here[17];
    for (int i = 0; name && i < r->count; i++) {
        const json_t *lineage = json_object_get(run_last_start(&r->runs[i]), "lineage");
        run_lineage_name(lineage, json_array_size(lineage), here);
        if (json_array_size(lineage) && !strcmp(here, name)) return i + 1;
    }
    return 0;
}

/* Writes the evaluations on one data file as a table, a column for each. list: those evaluations. */
static inline void compare_evaluation(FILE *f, const Runs *r, const json_t *list) {
    const json_t *one = json_array_get(list, 0);
    json_t *keys = (json_t *)checked_object(json_object(), "a JSON object");
    const char *key;
    json_t *value;
    fputs("<h3 class='mono'>", f);
    html_text(f, run_string(one, "data"));
    fputs("</h3><div class='scroll'><table class='all'><thead><tr><th>result</th>", f);
    for (size_t i = 0; i < json_array_size(list); i++) {
        fputs("<th>", f);
        compare_evaluated(f, r, json_array_get(list, i));
        fputs("</th>", f);
        json_object_foreach(json_array_get(list, i), key, value) {
            if (json_is_number(value) && !compare_setting(key)) json_object_set(keys, key, value);
        }
    }
    fputs("</tr></thead><tbody>\n", f);
    json_object_foreach(keys, key, value) {
        fputs("<tr><td class='mono'>", f);
        html_text(f, key);
        fputs("</td>", f);
        for (size_t i = 0; i < json_array_size(list); i++) compare_result(f, json_array_get(list, i), key);
        fputs("</tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
    json_decref(keys);
    static const char *const settings[] = {"samples", "temperature", "seed"};
    for (size_t k = 0; k < sizeof settings / sizeof *settings; k++)
        for (size_t i = 1; i < json_array_size(list); i++)
            if (!json_equal(json_object_get(one, settings[k]), json_object_get(json_array_get(list, i), settings[k]))) {
                fprintf(f, "<p class='note'>These evaluations do not have the same %s.</p>\n", settings[k]);
                break;
            }
}

/* Writes what evaluate printed of the models, a table for each data file. */
static inline void compare_evaluations(FILE *f, const Runs *r) {
    const size_t n = json_array_size(r->evaluations);
    if (!n) return;
    fputs(
        "<section id='evaluations'><h2>Evaluations</h2><p class='note'>What evaluate printed of the models; the letter "
        "names the run that made a model. Beside a value: its standard error, or its 95 % interval.</p>\n",
        f);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_array_get(r->evaluations, i);
        json_t *list = (json_t *)checked_object(json_array(), "a JSON array");
        bool first = true;
        for (int place = 0; place <= r->count; place++)
            for (size_t k = 0; k < n; k++) {
                json_t *other = json_array_get(r->evaluations, k);
                if (strcmp(run_string(one, "data"), run_string(other, "data")) || compare_place(r, other) != place)
                    continue;
                first &= k >= i;
                json_array_append(list, other);
            }
        if (first) compare_evaluation(f, r, list);
        json_decref(list);
    }
    fputs("</section>\n", f);
}

/* ---- runs that differ in one option ---- */

/* Whether an option names an output: runs that differ in it are not different otherwise. */
static inline bool compare_is_output(const char *name) {
    static const char *const outputs[] = {"output",         "metrics",  "report", "tensorboard",   "state",
                                          "output-dir",     "rollouts", "best",   "critic-output", "prm-output",
                                          "adapter-output", "quiet",    "resume", "save-steps",    "logging-steps"};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
        if (!strcmp(name, outputs[i])) return true;
    return false;
}

/* The number of an option of a run, NaN if it is none. */
static inline double compare_option(const Run *run, const char *name) {
    const char *text = run_string(json_object_get(run_last_start(run), "args"), name);
    char *end;
    const double value = text ? strtod(text, &end) : NAN;
    return text && *text && !*end ? value : NAN;
}

/* The only option, apart from outputs, in which all runs of one program differ, if it is a number in each; else NULL. */
static inline const char *compare_one_option(const Runs *r) {
    json_t *args = json_object_get(run_last_start(&r->runs[0]), "args");
    const char *one = NULL, *name;
    json_t *value;
    if (r->count < 2) return NULL;
    json_object_foreach(args, name, value) {
        bool differs = false;
        for (int i = 1; i < r->count; i++)
            differs |= !json_equal(value, json_object_get(json_object_get(run_last_start(&r->runs[i]), "args"), name));
        if (!differs || compare_is_output(name)) continue;
        if (one) return NULL;
        one = name;
    }
    for (int i = 0; one && i < r->count; i++) {
        const char *program = r->runs[i].h.program, *first = r->runs[0].h.program;
        if (!program || !first || strcmp(program, first) || isnan(compare_option(&r->runs[i], one))) return NULL;
    }
    return one;
}

/* Writes the last values of what such an option acts on, in the order of its values; the script adds a slider. */
static inline void compare_slider(FILE *f, const Runs *r) {
    static const char *const keys[] = {
        "objective/scores", "reward", "objective/gold", "eval_accuracy",          "eval_reward", "eval_loss", "loss",
        "objective/kl",     "kl",     "entropy",        "completions/mean_length"};
    const char *option = compare_one_option(r);
    int order[RUNS_MOST];
    if (!option) return;
    for (int i = 0; i < r->count; i++) {
        int k = i;
        for (; k > 0 && compare_option(&r->runs[order[k - 1]], option) > compare_option(&r->runs[i], option); k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
    fputs("<section id='one-option'><h2>One option</h2><p class='note'>The runs differ only in <code>", f);
    html_text(f, option);
    fputs(
        "</code>: the last values of each.</p><div id='slider'></div>\n<div class='scroll'><table class='all'><thead><tr>"
        "<th class='mono'>",
        f);
    html_text(f, option);
    fputs("</th><th>run</th>", f);
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
        if (history_find(&r->runs[0].h, keys[k])) fprintf(f, "<th class='mono'>%s</th>", keys[k]);
    fputs("</tr></thead><tbody>\n", f);
    for (int i = 0; i < r->count; i++) {
        const Run *run = &r->runs[order[i]];
        fprintf(f, "<tr data-run='%d'>", order[i]);
        run_cell(f, " class='mono'", run_string(json_object_get(run_last_start(run), "args"), option));
        fputs("<td>", f);
        compare_key(f, order[i]);
        fputs("</td>", f);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            const Series *s = history_find(&run->h, keys[k]);
            char text[32] = "\xE2\x80\x93";
            if (!history_find(&r->runs[0].h, keys[k])) continue;
            if (s && chart_last(s) >= 0) chart_value(s->values[chart_last(s)], false, text);
            fprintf(f, "<td>%s</td>", text);
        }
        fputs("</tr>\n", f);
    }
    fputs("</tbody></table></div></section>\n", f);
}

/* ---- curves ---- */

static inline void compare_number(FILE *f, size_t k, double value) {
    if (k) fputc(',', f);
    if (isfinite(value)) fprintf(f, "%.6g", value);
    else fputs("null", f);
}

/* Writes at most `most` points of a series: the last one of each of as many equal parts of its points. */
static inline void compare_points(FILE *f, const Run *run, int number, const Series *s, size_t most) {
    const Series *tokens = history_find(&run->h, "num_tokens"), *times = &run->h.times;
    const double began = history_began(&run->h);
    const size_t n = s->count < most ? s->count : most;
    static const char *const key[] = {"step", "tokens", "time", "value"};
    fprintf(f, "{\"run\":%d", number);
    for (int part = 0; part < 4; part++) {
        fprintf(f, ",\"%s\":[", key[part]);
        for (size_t k = 0; k < n; k++) {
            const size_t i = (k + 1) * s->count / n - 1;
            const int64_t step = s->steps[i];
            const double values[] = {(double)step, series_at(tokens, step), series_at(times, step) - began,
                                     s->values[i]};
            compare_number(f, k, values[part]);
        }
        fputc(']', f);
    }
    fputc('}', f);
}

/* The names of the metrics of all runs, each once, as the charts of a History without values. */
static inline History compare_names(const Runs *r) {
    History all = {0};
    for (int i = 0; i < r->count; i++)
        for (size_t k = 0; k < r->runs[i].h.series_count; k++)
            if (!history_find(&all, r->runs[i].h.series[k].key))
                history_value(&all, r->runs[i].h.series[k].key, 0, NAN);
    return all;
}

/* The chart of a metric in all runs, from that of its name; a run without it has no line. letters: (RUNS_MOST) names of
 * the lines. */
static inline Chart compare_chart(const Runs *r, const Curve *curve, char letters[][2]) {
    Chart c = curve->chart;
    double low = INFINITY, high = -INFINITY;
    c.count = r->count;
    c.letters = true;
    c.x0 = INFINITY;
    c.x1 = -INFINITY;
    for (int i = 0; i < r->count; i++) {
        snprintf(letters[i], 2, "%c", 'A' + i);
        c.lines[i] = (ChartLine){.mid = history_find(&r->runs[i].h, curve->key), .name = letters[i]};
        chart_range(c.lines[i].mid, &low, &high);
        c.x0 = fmin(c.x0, (double)r->runs[i].h.first_step);
        c.x1 = fmax(c.x1, (double)r->runs[i].h.last_step);
    }
    c.share &= low >= 0 && high <= 1;
    return c;
}

/* Writes the last value of each run that has the metric below a chart. */
static inline void compare_last(FILE *f, const Chart *c) {
    fputs("<p class='stats'>", f);
    for (int i = 0; i < c->count; i++) {
        const Series *s = c->lines[i].mid;
        const ptrdiff_t last = s ? chart_last(s) : -1;
        char text[32];
        if (last < 0) continue;
        chart_value(s->values[last], c->share, text);
        fprintf(f, "<span>%s <b>%s</b></span>", c->lines[i].name, text);
    }
    fputs("</p>", f);
}

static inline void compare_figure(FILE *f, const Runs *r, const Curve *curve, size_t most) {
    char letters[RUNS_MOST][2];
    const Chart c = compare_chart(r, curve, letters);
    fputs("<figure><figcaption><h4>", f);
    curve_name(f, curve);
    fprintf(f, "</h4><p>%s</p></figcaption><div>", curve->info->about);
    chart_svg(f, &c);
    fprintf(f, "<script type='application/json'>{\"unit\":\"%s\",\"share\":%d,\"lines\":[", c.unit, c.share);
    bool any = false;
    for (int i = 0; i < c.count; i++) {
        if (!c.lines[i].mid) continue;
        if (any) fputc(',', f);
        any = true;
        compare_points(f, &r->runs[i], i, c.lines[i].mid, most);
    }
    fputs("]}</script>", f);
    compare_last(f, &c);
    fputs("</div></figure>\n", f);
}

static inline void compare_curves(FILE *f, const Runs *r) {
    History all = compare_names(r);
    CurveList list = {(Curve *)xcalloc(all.series_count + 1, sizeof(Curve)), 0};
    for (size_t i = 0; i < all.series_count; i++) list.curves[list.count++] = curve_of(&all, i);
    qsort(list.curves, list.count, sizeof *list.curves, curve_compare);
    size_t most = COMPARE_ALL / (list.count * (size_t)r->count + 1);
    most = most < COMPARE_FEWEST ? COMPARE_FEWEST : most > COMPARE_POINTS ? COMPARE_POINTS : most;
    fprintf(f,
            "<section id='curves'><h2>Curves</h2><p class='note'>The letter at the end of a curve names its run; below "
            "are the last values. The script draws at most %zu points of a curve.</p>\n",
            most);
    report_controls(f, true);
    for (size_t i = 0; i < list.count; i++) {
        if (!i || list.curves[i - 1].group != list.curves[i].group)
            fprintf(f, "<h3>%s</h3><div class='curves'>\n", curve_group_name(list.curves[i].group));
        compare_figure(f, r, &list.curves[i], most);
        if (i + 1 == list.count || list.curves[i + 1].group != list.curves[i].group) fputs("</div>\n", f);
    }
    fputs("</section>\n", f);
    free(list.curves);
    history_free(&all);
}

/* Writes the page, with the rollouts of the run that runs_match() has found. */
static inline void compare_page(FILE *f, const Runs *r) {
    const char *title = r->chain ? "Stages of training" : "Runs side by side";
    report_begin(f, title, false);
    fprintf(f, "<header><h1>%s</h1></header>\n", title);
    compare_legend(f, r);
    if (r->chain) compare_stages(f, r);
    compare_evaluations(f, r);
    compare_options(f, r);
    compare_slider(f, r);
    compare_phases(f, r);
    compare_curves(f, r);
    if (r->rollouts_name) {
        report_rollouts(f, &(History){.rollouts = &r->rollouts});
        fprintf(f, "<script>\n%s</script>\n", rollouts_js());
    }
    report_end(f, compare_js());
}

/* Writes the page to a file, which is replaced only when the page is complete; "-" is standard output. */
static inline bool compare_write(const Runs *r, const char *path, Error *e) {
    char *page;
    size_t n;
    FILE *f = (FILE *)checked_object(open_memstream(&page, &n), "a stream in memory");
    compare_page(f, r);
    if (fclose(f)) die("out of memory: the page needs more than %zu bytes", n);
    const bool ok = report_file(path, page, n, e);
    free(page);
    return ok;
}

#endif
