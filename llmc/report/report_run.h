/* report_run.h - what a report says of the run itself: command, version, machine, times, files, lineage, warnings.
 *
 *     report_run(f, &history);
 *
 * The facts are the records of run_facts.h, which may come from a file: each is shown only if it has the right type.
 * The section is omitted if there is no record of the beginning.
 */
#ifndef LLMC_REPORT_REPORT_RUN_H
#define LLMC_REPORT_REPORT_RUN_H

#include "../base/program.h" /* program_bytes */
#include "chart_text.h"      /* chart_value */
#include "history.h"         /* History, history_number */
#include "html.h"            /* html_text, html_bytes */
#include "report_head.h"     /* report_date, report_duration */
#include "run_facts.h"       /* RUN_PHASES, RunPhase, run_phase_name */

/* A text of a record, or NULL. */
static inline const char *run_string(const json_t *record, const char *key) {
    return json_string_value(json_object_get(record, key));
}

/* A number of a record, or NaN. */
static inline double run_number(const json_t *record, const char *key) {
    return history_number(json_object_get(record, key));
}

/* Writes a row of the list of facts; nothing for a NULL value. */
static inline void run_row(FILE *f, const char *name, const char *value) {
    if (!value || !*value) return;
    fprintf(f, "<div><dt>%s</dt><dd>", name);
    html_text(f, value);
    fputs("</dd></div>\n", f);
}

static inline void run_date(FILE *f, const char *name, double time) {
    char text[64];
    if (report_date(time, text, sizeof text)) run_row(f, name, text);
}

/* Writes an argument as a POSIX shell reads it back. */
static inline void run_argument(FILE *f, const char *text) {
    const bool plain = *text && text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                                  "%+,-./:=@_")] == 0;
    if (plain) {
        html_text(f, text);
        return;
    }
    html_text(f, "'");
    for (const char *c = text; *c;) {
        const size_t n = strcspn(c, "'");
        html_bytes(f, c, n);
        c += n;
        if (*c) html_text(f, "'\\''");
        c += *c != 0;
    }
    html_text(f, "'");
}

static inline void run_command_row(FILE *f, const json_t *start) {
    const json_t *command = json_object_get(start, "command");
    if (!json_array_size(command)) return;
    fputs("<div><dt>command</dt><dd class='mono'>", f);
    for (size_t i = 0; i < json_array_size(command); i++) {
        const char *text = json_string_value(json_array_get(command, i));
        if (i) fputc(' ', f);
        if (text) run_argument(f, text);
    }
    fputs("</dd></div>\n", f);
}

/* Writes the facts of the beginning and of the end as a list. */
static inline void run_list(FILE *f, const json_t *start, const json_t *end) {
    char text[512], bytes[32];
    fputs("<dl class='facts-list'>\n", f);
    run_command_row(f, start);
    run_row(f, "folder", run_string(start, "folder"));
    run_row(f, "version", run_string(start, "version"));
    run_row(f, "host", run_string(start, "host"));
    const char *processor = run_string(start, "processor"), *kernels = run_string(start, "kernels");
    snprintf(text, sizeof text, "%s%s%s", processor ? processor : "", processor && kernels ? "; kernels: " : "",
             kernels ? kernels : "");
    run_row(f, "processor", text);
    run_row(f, "device", run_string(start, "device"));
    run_date(f, "started", run_number(start, "time"));
    const char *status = run_string(end, "status");
    run_date(f, status && !strcmp(status, "running") ? "page written" : "ended", run_number(end, "time"));
    run_row(f, "status", status);
    run_row(f, "reason", run_string(end, "reason"));
    if (run_number(end, "tokens_per_second") > 0) {
        chart_value(run_number(end, "tokens_per_second"), false, bytes);
        snprintf(text, sizeof text, "%s tokens per second of the steps", bytes);
        run_row(f, "speed", text);
    }
    const double memory = run_number(end, "peak_memory"), gpu = run_number(end, "peak_gpu_memory");
    if (memory >= 0 || gpu >= 0) {
        program_bytes(bytes, memory >= 0 ? memory : gpu);
        run_row(f, memory >= 0 ? "peak memory" : "peak GPU memory", bytes);
    }
    fputs("</dl>\n", f);
}

/* Writes the time of each phase: a bar of their shares, and a table. */
static inline void run_phases(FILE *f, const json_t *end) {
    const json_t *seconds = json_object_get(end, "seconds");
    double part[RUN_PHASES], all = 0, at = 0;
    for (int i = 0; i < RUN_PHASES; i++) {
        part[i] = fmax(run_number(seconds, run_phase_name((RunPhase)i)), 0); /* 0 if there is no number */
        all += part[i];
    }
    if (!(all > 0) || !isfinite(all)) return;
    fputs("<h3>Time of each phase</h3><p class='note'>The phases divide the running time of the process.</p>\n"
          "<svg class='phases' viewBox='0 0 600 18' preserveAspectRatio='none' aria-hidden='true'>",
          f);
    for (int i = 0; i < RUN_PHASES; i++) {
        if (!part[i]) continue;
        fprintf(f, "<path class='p%d' d='M%.2f 0H%.2fV18H%.2fz'/>", i, 600 * at / all, 600 * (at + part[i]) / all,
                600 * at / all);
        at += part[i];
    }
    fputs("</svg>\n<div class='scroll'><table class='all'><thead><tr><th>phase</th><th>time</th><th>share</th></tr>"
          "</thead><tbody>\n",
          f);
    for (int i = 0; i < RUN_PHASES; i++) {
        char text[64], share[32];
        if (!part[i]) continue;
        report_duration(part[i], text, sizeof text);
        chart_value(part[i] / all, true, share);
        fprintf(f, "<tr><td><i class='p%d'></i>%s</td><td>%s</td><td>%s</td></tr>\n", i, run_phase_name((RunPhase)i),
                text, share);
    }
    fputs("</tbody></table></div>\n", f);
}

static inline void run_cell(FILE *f, const char *class, const char *text) {
    fprintf(f, "<td%s>", class);
    html_text(f, text ? text : "\xE2\x80\x93");
    fputs("</td>", f);
}

/* Writes the table of the input files. */
static inline void run_files(FILE *f, const json_t *start) {
    const json_t *files = json_object_get(start, "files");
    if (!json_array_size(files)) return;
    fputs("<h3>Files read</h3><p class='note'>xxh3: the hash that <code>xxhsum -H3</code> prints; files of more than "
          "2 GiB are not hashed.</p>\n<div class='scroll'><table class='all'><thead><tr><th>option</th><th>file</th>"
          "<th>size</th><th>xxh3</th></tr></thead><tbody>\n",
          f);
    for (size_t i = 0; i < json_array_size(files); i++) {
        const json_t *file = json_array_get(files, i);
        char text[32] = "\xE2\x80\x93";
        if (run_number(file, "bytes") >= 0) program_bytes(text, run_number(file, "bytes"));
        fputs("<tr>", f);
        run_cell(f, "", run_string(file, "option"));
        run_cell(f, " class='mono'", run_string(file, "path"));
        run_cell(f, "", text);
        run_cell(f, " class='mono'", run_string(file, "xxh3"));
        fputs("</tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
}

/* Writes the options of a stage of the lineage, folded away. */
static inline void run_stage_options(FILE *f, const json_t *options) {
    const char *name;
    json_t *value;
    if (!json_object_size(options)) return;
    fprintf(f, "<details><summary>%zu options</summary><p class='mono'>", json_object_size(options));
    json_object_foreach((json_t *)options, name, value) {
        if (!json_is_string(value)) continue;
        html_text(f, name);
        fputs("&nbsp;", f);
        html_text(f, json_string_value(value));
        fputs("; ", f);
    }
    fputs("</p></details>", f);
}

/* Writes the stages of training of the model, this one as the last. */
static inline void run_lineage(FILE *f, const json_t *start) {
    const json_t *lineage = json_object_get(start, "lineage");
    if (!json_array_size(lineage)) return;
    fputs(
        "<h3>Lineage</h3><p class='note'>The stages of training that made the model; the last one is this run. Parent: "
        "the hash of the model file with which a stage began.</p>\n<div class='scroll'><table class='all'><thead><tr>"
        "<th>stage</th><th>parent</th><th>input</th><th>learning rate</th><th>steps</th><th>seed</th><th>options</th>"
        "</tr></thead><tbody>\n",
        f);
    for (size_t i = 0; i < json_array_size(lineage); i++) {
        const json_t *stage = json_array_get(lineage, i), *options = json_object_get(stage, "options");
        fprintf(f, "<tr><td>%zu. ", i + 1);
        html_text(f, run_string(stage, "stage") ? run_string(stage, "stage") : "");
        fputs("</td>", f);
        run_cell(f, " class='mono'", run_string(stage, "parent") ? run_string(stage, "parent") : "new model");
        run_cell(f, " class='mono'", run_string(options, "input"));
        run_cell(f, "", run_string(options, "learning-rate"));
        run_cell(f, "", run_string(options, "max-steps"));
        run_cell(f, "", run_string(options, "seed"));
        fputs("<td>", f);
        run_stage_options(f, options);
        fputs("</td></tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
}

/* Writes the warnings that were printed during the run. */
static inline void run_warning_list(FILE *f, const json_t *end) {
    const json_t *warnings = json_object_get(end, "warnings");
    if (!json_array_size(warnings)) return;
    fputs("<h3 id='warnings'>Warnings</h3><ul class='warnings'>\n", f);
    for (size_t i = 0; i < json_array_size(warnings); i++) {
        const json_t *warning = json_array_get(warnings, i);
        const char *text = run_string(warning, "text");
        const double times = run_number(warning, "times");
        fputs("<li>", f);
        html_text(f, text ? text : "");
        if (times > 1) fprintf(f, " <span class='soft'>(%.0f times)</span>", times);
        fputs("</li>\n", f);
    }
    if (run_number(end, "further_warnings") > 0)
        fprintf(f, "<li>%.0f further warnings are not listed.</li>\n", run_number(end, "further_warnings"));
    fputs("</ul>\n", f);
}

/* Writes the section. The parts of a resumed run are listed with the time and the version of each. */
static inline void report_run(FILE *f, const History *h) {
    const size_t parts = json_array_size(h->starts);
    if (!parts) return;
    const json_t *start = json_array_get(h->starts, parts - 1);
    fputs("<section id='run'><h2>Run</h2>\n", f);
    run_list(f, start, h->end);
    if (parts > 1) {
        fprintf(
            f,
            "<h3>Parts</h3><p class='note'>The run was resumed %zu time%s; what is above and the time of each phase "
            "are those of the last part.</p><ul class='warnings'>\n",
            parts - 1, parts == 2 ? "" : "s");
        for (size_t i = 0; i < parts; i++) {
            const json_t *part = json_array_get(h->starts, i);
            char text[64] = "";
            report_date(run_number(part, "time"), text, sizeof text);
            fprintf(f, "<li>%s", text);
            if (i) fprintf(f, ", from step %.0f", run_number(part, "resumed_step"));
            fputs(", version ", f);
            html_text(f, run_string(part, "version") ? run_string(part, "version") : "unknown");
            fputs("</li>\n", f);
        }
        fputs("</ul>\n", f);
    }
    run_warning_list(f, h->end);
    run_phases(f, h->end);
    run_files(f, start);
    run_lineage(f, start);
    fputs("</section>\n", f);
}

#endif
