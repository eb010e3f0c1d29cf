/* runs.h - metrics files of several runs, read for a page that shows them side by side.
 *
 *     Runs runs = {0};
 *     if (!runs_read(&runs, "a.jsonl", &e) || !runs_read(&runs, "a_heldout.json", &e)) die("%s", e.text);
 *     runs_order(&runs);
 *     runs_free(&runs);
 *
 * A file may be compressed. Every line must be one that metrics.h writes, and the steps must increase; the message of
 * any other names the file and the line. The last line of a run that was killed may be cut off: it is left out, which
 * the page says. What evaluate printed may be among the files; its model is found by the name of its lineage.
 */
#ifndef LLMC_REPORT_RUNS_H
#define LLMC_REPORT_RUNS_H

#include "../base/error.h" /* error_set, Error, checked_object, xrealloc */
#include "../base/io.h"    /* Reader, file_slurp, reader_close, reader_open, ... */
#include "../base/text.h"  /* utf8_copy */
#include "chart.h"         /* CHART_LINES */
#include "history.h"       /* LINE_BROKEN, history_free, History, HistoryLine, ... */
#include "rollouts.h"      /* Rollouts, rollouts_begins, rollouts_free, rollouts_read */

enum { RUNS_MOST = CHART_LINES }; /* a letter names each */

typedef struct Run {
    char *name; /* path of the file, or "standard input", as valid UTF-8 */
    History h;
    bool cut; /* the last line is cut off */
} Run;

typedef struct Runs {
    Run *runs;
    int count;
    json_t *evaluations; /* array of what evaluate printed, each with the path of its file as "file"; NULL: none */
    Rollouts rollouts;   /* of one of the runs */
    char *rollouts_name; /* path of their file; NULL: there are none */
    int rollouts_of;     /* number of that run; set by runs_match() */
    bool chain;          /* a run goes on with the model of another; set by runs_order() */
} Runs;

static inline void runs_free(Runs *r) {
    for (int i = 0; i < r->count; i++) {
        history_free(&r->runs[i].h);
        free(r->runs[i].name);
    }
    free(r->runs);
    json_decref(r->evaluations);
    rollouts_free(&r->rollouts);
    free(r->rollouts_name);
    *r = (Runs){0};
}

/* The record of the last beginning of a run, or NULL. */
static inline const json_t *run_last_start(const Run *r) {
    const size_t n = json_array_size(r->h.starts);
    return n ? json_array_get(r->h.starts, n - 1) : NULL;
}

/* Adds the lines of text[0..n). */
static inline bool run_parse(Run *r, const char *text, size_t n, Error *e) {
    long long number = 1;
    for (size_t at = 0; at < n; number++) {
        const char *end = (const char *)memchr(text + at, '\n', n - at);
        const size_t length = end ? (size_t)(end - text) - at : n - at;
        const int64_t before = r->h.lines ? r->h.last_step : INT64_MIN;
        const size_t lines = r->h.lines;
        Error why;
        const HistoryLine kind = history_read_line(&r->h, text + at, length, INT64_MAX, &why);
        if (kind == LINE_BROKEN && !end) r->cut = true;
        else if (kind == LINE_BROKEN) return error_set(e, "%s: line %lld: %s", r->name, number, why.text);
        if (r->h.lines > lines && r->h.last_step <= before)
            return error_set(e, "%s: line %lld: step %lld after step %lld, expected increasing steps", r->name, number,
                             (long long)r->h.last_step, (long long)before);
        at += length + 1;
    }
    if (!r->h.lines) return error_set(e, "%s: line %lld: the file ends without a step", r->name, number);
    return true;
}

/* Adds the file's text as what evaluate printed; false if it is something else. */
static inline bool runs_add_evaluation(Runs *r, const char *path, const char *text, size_t n) {
    json_t *object = json_loadb(text, n, 0, NULL);
    if (!json_is_string(json_object_get(object, "kind")) || !json_is_string(json_object_get(object, "data"))) {
        json_decref(object);
        return false;
    }
    char *name = utf8_copy(path);
    json_object_set_new(object, "file", json_string(name));
    free(name);
    if (!r->evaluations) r->evaluations = (json_t *)checked_object(json_array(), "a JSON array");
    json_array_append_new(r->evaluations, object);
    return true;
}

/* Whether a regular file, which may be compressed, begins as a file of rollouts does. */
static inline bool runs_is_rollouts(const char *path) {
    Error e;
    Reader in;
    struct stat about;
    char first[16] = "";
    bool failed = false;
    if (!strcmp(path, "-") || stat(path, &about) || !S_ISREG(about.st_mode) || !reader_open(&in, path, &e))
        return false;
    const size_t n = reader_peek(&in, first, sizeof first, &failed, &e);
    reader_close(&in);
    return n == sizeof first && rollouts_begins(first);
}

/* Reads a metrics file and adds the run, what evaluate printed, or the rollouts of one run. On failure nothing is
 * added. */
static inline bool runs_read(Runs *r, const char *path, Error *e) {
    size_t n = 0;
    if (runs_is_rollouts(path)) {
        if (r->rollouts_name)
            return error_set(e, "%s: a page shows the rollouts of one run, and %s is given, too", path,
                             r->rollouts_name);
        if (!rollouts_read(&r->rollouts, path, e)) return false;
        r->rollouts_name = utf8_copy(path);
        return true;
    }
    if (r->count == RUNS_MOST) return error_set(e, "%s: more than %d runs do not fit on a page", path, RUNS_MOST);
    char *text = file_slurp(path, (size_t)1 << 32, &n, e);
    if (!text) return false;
    if (runs_add_evaluation(r, path, text, n)) {
        free(text);
        return true;
    }
    Run run = {.name = utf8_copy(strcmp(path, "-") ? path : "standard input")};
    const bool ok = run_parse(&run, text, n, e);
    free(text);
    if (!ok) {
        history_free(&run.h);
        free(run.name);
        return false;
    }
    const json_t *start = run_last_start(&run);
    run.h.program = utf8_copy(json_string_value(json_object_get(start, "program")));
    r->runs = (Run *)xrealloc(r->runs, (size_t)r->count + 1, sizeof *r->runs);
    r->runs[r->count++] = run;
    return true;
}

/* Whether b began with a model that a made: the stages of a are the first ones of b. */
static inline bool run_continues(const Run *a, const Run *b) {
    const json_t *before = json_object_get(run_last_start(a), "lineage"),
                 *after = json_object_get(run_last_start(b), "lineage");
    const size_t n = json_array_size(before);
    if (!n || n >= json_array_size(after)) return false;
    for (size_t i = 0; i < n; i++)
        if (!json_equal(json_array_get(before, i), json_array_get(after, i))) return false;
    return true;
}

/* If a run goes on with the model of another, sorts the runs so that each comes after those that it goes on from;
 * otherwise, and among the others, their order is kept. */
static inline void runs_order(Runs *r) {
    for (int i = 0; i < r->count; i++)
        for (int k = 0; k < r->count; k++) r->chain |= run_continues(&r->runs[i], &r->runs[k]);
    for (int i = 1; r->chain && i < r->count; i++)
        for (int k = i; k > 0; k--) {
            const size_t a = json_array_size(json_object_get(run_last_start(&r->runs[k - 1]), "lineage")),
                         b = json_array_size(json_object_get(run_last_start(&r->runs[k]), "lineage"));
            if (a <= b) break;
            const Run held = r->runs[k];
            r->runs[k] = r->runs[k - 1];
            r->runs[k - 1] = held;
        }
}

/* Finds the run that the rollouts are of; call it after runs_order(). */
static inline bool runs_match(Runs *r, Error *e) {
    if (!r->rollouts_name) return true;
    for (r->rollouts_of = 0; r->rollouts_of < r->count; r->rollouts_of++) {
        const char *run = json_string_value(json_object_get(run_last_start(&r->runs[r->rollouts_of]), "run"));
        if (run && !strcmp(run, r->rollouts.run)) return true;
    }
    return error_set(e, "%s: the metrics of the run with these rollouts are not among the files", r->rollouts_name);
}

#endif
