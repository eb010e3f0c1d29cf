/* metrics.h - the record of a run: metrics, samples, a progress line and a report.
 *
 *     Metrics m;
 *     if (!metrics_open(&m, "train_grpo", "run/metrics.jsonl", "run/tb", "run/report.html", -1, &e)) die("%s", e.text);
 *     metrics_header(&m, "6 layers, width 384, 10.9M parameters");
 *     metrics_config(&m, "beta", "0.04");
 *     metrics_sample(&m, "before", "2+3=", "6", "5", 0);
 *     for (step = 1; step <= steps; step++) {
 *         metrics_set(&m, "loss", loss);
 *         metrics_set(&m, "reward", mean_reward);
 *         if (!metrics_step(&m, step, &e)) die("%s", e.text);
 *         metrics_line(&m, "step %lld | loss %.4f", step, loss);       // printed above the progress line
 *         metrics_progress(&m, step, steps, "reward 0.71");
 *     }
 *     metrics_sample(&m, "after", "2+3=", "5", "5", 1);
 *     metrics_final(&m, "Held-out greedy accuracy", "31.2 %", "87.5 %");
 *     if (!metrics_close(&m, &e)) die("%s", e.text);
 *
 * metrics.jsonl     one line per step: {"step":12,"time":1764000000.123,"loss":0.6931,...}. time is in seconds since
 *                   1970. Numbers have the fewest digits that read back as the same double; non-finite values are null.
 *                   "-" writes to standard output.
 *                   The first and the last line describe the run, if metrics_describe() was called: see run_facts.h.
 * metrics.samples.jsonl   the samples, if there are any: {"step":0,"when":"before","prompt":...,"completion":...,
 *                   "answer":...,"reward":0}. Its name is that of the metrics file with .samples before .jsonl.
 *                   A preference pair is {"step":0,"when":"before","prompt":...,"chosen":...,"rejected":...,
 *                   "chosen_reward":0.1,"rejected_reward":-0.2}.
 *                   A labelled solution is {"step":0,"when":"before","prompt":...,"steps":[{"text":...,"label":1,
 *                   "score":0.3},...]}.
 * TensorBoard       event files with the same values as metrics.jsonl, the samples as texts and the options as
 *                   hyperparameters, see tensorboard.h.
 * report            one HTML page, see report.h; written after ten seconds, then every minute (less often if that takes
 *                   more than half a percent of the time), and at the end of the run.
 *
 * Resuming: with resume_step >= 0 both JSON files are truncated, atomically, to the lines up to that step. These lines
 * become the beginning of the report's curves. A last line that a kill left unfinished is dropped; any other unreadable
 * line is an error and leaves the file unchanged. A new run (resume_step -1) empties both files, but only when it
 * writes its first line: a run that fails earlier does not touch them.
 *
 * A full disk or an unwritable path gives one Error. metrics_sample() returns no error, so the next metrics_step() or
 * metrics_close() reports its failure.
 */
#ifndef LLMC_REPORT_METRICS_H
#define LLMC_REPORT_METRICS_H

#include "../base/clock.h"     /* clock_date, clock_seconds */
#include "../base/error.h"     /* Error, error_set, PRINTF_LIKE, xrealloc, ... */
#include "../base/io.h"        /* writer_write, Writer, writer_abort, writer_commit, ... */
#include "../base/json_text.h" /* json_number_text, json_dump_short */
#include "../base/terminal.h"  /* terminal_escapes, terminal_width */
#include "../base/text.h"      /* text_format, TextBuffer, utf8_copy, text_append, ... */
#include "history.h"           /* history_row, History, HistoryLine, LINE_KEPT, ... */
#include "progress.h"          /* progress_draw */
#include "report.h"            /* report_check, report_write */
#include "rollouts.h"          /* RolloutLog, rollouts_add, rollouts_close, rollouts_open */
#include "run_facts.h"         /* RunPhase, RUN_SAVING, PhaseClock, phase_clock_start, ... */
#include "tensorboard.h"       /* tensorboard_close, TensorBoard, tensorboard_histogram, tensorboard_hparams, ... */
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef struct Metrics {
    History history;
    char *jsonl_path, *samples_path, *report_path; /* NULL if not requested */
    FILE *jsonl, *samples;
    TensorBoard board;
    json_t *start;   /* the record of the beginning (run_facts.h); NULL without metrics_describe() */
    json_t *results; /* what the program adds to the record of the end; NULL without metrics_describe() */
    PhaseClock phases;
    RolloutLog *rollouts; /* of metrics_open_rollouts(), or NULL */
    const char *status;   /* "finished" unless the program sets "stopped" or "failed" before the end */
    bool begun;           /* the files have been truncated for this run */
    bool resumed, samples_kept, pairs_kept, solutions_kept;
    Error failed; /* text is "" until something fails */
    char **names; /* (count) metrics of the current step */
    double *values;
    size_t count, capacity;
    struct MetricsValues { /* distributions of the current step, for TensorBoard */
        char *name;
        double *values;
        size_t n;
    } * distributions;
    size_t distribution_count;
    double clock, reported, carried; /* time of opening, of the last report (monotonic); seconds run before resuming */
    double report_wait;              /* seconds from one report to the next */
    bool quiet;                      /* print nothing: set on every rank but the first */
    bool brief;                      /* print only warnings and notices: --quiet */
    /* the progress line */
    bool terminal, shown;
    double interval; /* seconds between two updates, 0.1 unless set after metrics_open() */
    double drawn, step_clock, step_seconds, step_weight;
    int64_t progress_step;
} Metrics;

/* ---- the JSON lines ---- */

/* Writes text as a JSON string. */
static inline void metrics_json_text(FILE *f, const char *text) {
    json_t *string = json_string(text);
    char *json = string ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
    fputs((const char *)checked(json, strlen(text)), f);
    free(json);
    json_decref(string);
}

/* "run/metrics.jsonl" -> "run/metrics.samples.jsonl" */
static inline char *metrics_samples_path(const char *jsonl) {
    const char *end = ".jsonl";
    size_t n = strlen(jsonl);
    if (n >= strlen(end) && !strcmp(jsonl + n - strlen(end), end)) n -= strlen(end);
    char *path = (char *)xmalloc(n + 32);
    snprintf(path, n + 32, "%.*s.samples.jsonl", (int)n, jsonl);
    return path;
}

/* Reads the lines of `path` into the history and rewrites the file without those after step `last`. A missing file
 * counts as empty. */
static inline bool metrics_cut(Metrics *m, const char *path, int64_t last,
                               HistoryLine (*read)(History *, const char *, size_t, int64_t, Error *), Error *e) {
    FILE *f = fopen(path, "re");
    if (!f) return errno == ENOENT || error_set(e, "%s: cannot read: %s", path, strerror(errno));
    struct stat about;
    if (fstat(fileno(f), &about) || !S_ISREG(about.st_mode)) {
        fclose(f);
        return true; /* a pipe or device has no earlier lines */
    }
    Writer w;
    if (!writer_open(&w, path, e)) {
        fclose(f);
        return false;
    }
    char *line = NULL;
    size_t size = 0;
    bool ok = true, dropped = false;
    ssize_t n;
    errno = 0;
    for (int64_t number = 1; ok && (n = getline(&line, &size, f)) > 0; number++) {
        Error why;
        const bool whole = line[n - 1] == '\n';
        const HistoryLine kind = read(&m->history, line, (size_t)n, last, &why);
        dropped |= kind != LINE_KEPT || !whole;
        if (kind == LINE_KEPT) ok = writer_write(&w, line, (size_t)n, e) && (whole || writer_write(&w, "\n", 1, e));
        else if (kind == LINE_BROKEN && whole)
            ok = error_set(e, "%s: line %lld: %s", path, (long long)number, why.text);
    }
    if (ok && ferror(f)) ok = error_set(e, "%s: cannot read: %s", path, strerror(errno));
    free(line);
    fclose(f);
    if (ok && dropped) return writer_commit(&w, e);
    writer_abort(&w);
    return ok;
}

/* Opens a file for appending and keeps its contents. */
static inline FILE *metrics_append(const char *path, Error *e) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "a");
    if (!f) {
        error_set(e, "%s: cannot write: %s", path, strerror(errno));
        if (fd >= 0) close(fd);
    }
    return f;
}

static inline bool metrics_flush(FILE *f, const char *path, Error *e) {
    return (!fflush(f) && !ferror(f)) || error_set(e, "%s: cannot write: %s", path, strerror(errno));
}

/* Writes a record of the run's beginning or end. */
static inline bool metrics_record(Metrics *m, const json_t *record, Error *e) {
    if (!m->jsonl) return true;
    char *text = json_dump_short(record, JSON_COMPACT);
    fprintf(m->jsonl, "%s\n", text);
    free(text);
    return metrics_flush(m->jsonl, m->jsonl_path, e);
}

/* Empties the files of an earlier run before the first line of a new one is written. */
static inline bool metrics_empty(Metrics *m, Error *e) {
    struct stat about;
    if (!m->jsonl || m->resumed || fstat(fileno(m->jsonl), &about) || !S_ISREG(about.st_mode)) return true;
    if (ftruncate(fileno(m->jsonl), 0)) return error_set(e, "%s: cannot empty: %s", m->jsonl_path, strerror(errno));
    if (m->samples_path && unlink(m->samples_path) && errno != ENOENT)
        return error_set(e, "%s: cannot remove: %s", m->samples_path, strerror(errno));
    return true;
}

/* Empties the files of an earlier run and writes the record of the beginning, before the first line of this run. */
static inline bool metrics_begin(Metrics *m, Error *e) {
    if (m->begun) return true;
    m->begun = true;
    if (!metrics_empty(m, e)) return false;
    if (!m->start) return true;
    history_start(&m->history, json_incref(m->start));
    const json_t *options = json_object_get(m->start, "args");
    if (options && m->board.file && !tensorboard_hparams(&m->board, clock_date(), options, e)) return false;
    return metrics_record(m, m->start, e);
}

/* ---- opening ---- */

/* Writes the distributions of the step, if ok is set, and frees them. */
static inline bool metrics_write_distributions(Metrics *m, double time, int64_t step, bool ok, Error *e) {
    for (size_t i = 0; i < m->distribution_count; i++) {
        struct MetricsValues *d = &m->distributions[i];
        ok = ok && tensorboard_histogram(&m->board, time, step, d->name, d->values, d->n, e);
        free(d->name), free(d->values);
    }
    m->distribution_count = 0;
    return ok;
}

static inline void metrics_free(Metrics *m) {
    if (m->jsonl && m->jsonl != stdout) fclose(m->jsonl);
    if (m->samples) fclose(m->samples);
    if (m->rollouts) rollouts_close(m->rollouts);
    free(m->rollouts);
    tensorboard_close(&m->board, NULL);
    for (size_t i = 0; i < m->count; i++) free(m->names[i]);
    metrics_write_distributions(m, 0, 0, false, NULL);
    free(m->distributions);
    free(m->names);
    free(m->values);
    free(m->jsonl_path);
    free(m->samples_path);
    free(m->report_path);
    json_decref(m->start);
    json_decref(m->results);
    history_free(&m->history);
    *m = (Metrics){0};
}

/* Begins the record of a run of `program`. jsonl (a path or "-"), tensorboard_dir and report may each be NULL.
 * resume_step: -1 for a new run, or the last step of the run that is resumed. On failure m is freed. */
static inline bool metrics_open(Metrics *m, const char *program, const char *jsonl, const char *tensorboard_dir,
                                const char *report, int64_t resume_step, Error *e) {
    *m = (Metrics){.resumed = resume_step >= 0, .interval = 0.1, .terminal = terminal_escapes(STDERR_FILENO)};
    m->phases = phase_clock_start();
    m->status = "finished";
    m->report_wait = 10;
    m->clock = m->reported = clock_seconds();
    m->progress_step = -1;
    m->history.program = utf8_copy(program);
    m->history.first_step = m->history.last_step = m->resumed ? resume_step : 0;
    if (report) m->report_path = xstrdup(report);
    bool ok = true;
    if (jsonl && !strcmp(jsonl, "-")) {
        m->jsonl_path = xstrdup("standard output");
        m->jsonl = stdout;
    } else if (jsonl) {
        m->jsonl_path = xstrdup(jsonl);
        m->samples_path = metrics_samples_path(jsonl);
        if (m->resumed)
            ok = metrics_cut(m, m->jsonl_path, resume_step, history_read_line, e) &&
                 metrics_cut(m, m->samples_path, resume_step, history_read_sample, e);
        m->samples_kept = m->history.sample_count > 0;
        m->pairs_kept = m->history.pair_count > 0;
        m->solutions_kept = m->history.solution_count > 0;
        m->carried = m->history.seconds;
        ok = ok && (m->jsonl = metrics_append(jsonl, e));
    }
    if (ok && tensorboard_dir) ok = tensorboard_open(&m->board, tensorboard_dir, clock_date(), resume_step, e);
    if (ok && report) ok = report_check(report, e);
    if (!ok) metrics_free(m);
    return ok;
}

/* Opens the file of the rollouts, or, if path is NULL, keeps them for the report alone. run: see rollouts_open(). */
static inline bool metrics_open_rollouts(Metrics *m, const char *path, const char *run, Error *e) {
    m->rollouts = (RolloutLog *)xcalloc(1, sizeof *m->rollouts);
    return rollouts_open(m->rollouts, path, run, m->history.program, m->resumed ? m->history.last_step : -1, e);
}

/* Has the files begin and end with records of the run (run_facts.h). version: that of the program. */
static inline void metrics_describe(Metrics *m, const char *version) {
    m->start = run_start_record(m->history.program, version, m->resumed ? m->history.last_step : -1);
    m->results = (json_t *)checked_object(json_object(), "a JSON object");
}

/* Adds a fact to the record of the beginning, before the first step, or to that of the end; takes the value over. */
static inline void metrics_fact(Metrics *m, const char *key, json_t *value) {
    if (m->start) json_object_set_new(m->start, key, value);
    else json_decref(value);
}

static inline void metrics_result(Metrics *m, const char *key, json_t *value) {
    if (m->results) json_object_set_new(m->results, key, value);
    else json_decref(value);
}

/* Begins another phase of the run and returns the one that ends. */
static inline RunPhase metrics_phase(Metrics *m, RunPhase phase) { return phase_enter(&m->phases, phase); }

/* Adds a line to the head of the report: the model, the machine or the command. */
static inline void metrics_header(Metrics *m, const char *text) { history_row(&m->history.header, text, NULL, NULL); }

/* Adds a row to the report's table of options; with a NULL value, `name` is the title of the rows that follow. */
static inline void metrics_config(Metrics *m, const char *name, const char *value) {
    history_row(&m->history.config, name, value, NULL);
}

/* Whether a text has a number that is not one, such as "nan %": a mean over nothing. */
static inline bool metrics_has_nan(const char *text) {
    for (const char *at = text; (at = strstr(at, "nan")); at += 3) {
        const bool begins = at == text || strchr(" -(", at[-1]), ends = !at[3] || strchr(" %)", at[3]);
        if (begins && ends) return true;
    }
    return false;
}

/* Removes from a line the parts, separated by " | ", that have a NaN. */
static inline void metrics_drop_nan(char *line) {
    char *to = line;
    for (char *part = line, *next; part; part = next) {
        next = strstr(part, " | ");
        if (next) {
            *next = 0;
            next += 3;
        }
        if (metrics_has_nan(part)) continue;
        const size_t n = strlen(part);
        if (to != line) {
            memcpy(to, " | ", 3); /* the removed parts or this part's own separator were here */
            to += 3;
        }
        memmove(to, part, n);
        to += n;
    }
    *to = 0;
}

/* Adds a row to the report's final numbers, unless after is NaN. before may be NULL; if it is NaN, it is left out. Both
 * are shown verbatim; if both begin with a number and end in the same unit ("31.2 %", "87.5 %"), the change is shown
 * too. */
static inline void metrics_final(Metrics *m, const char *name, const char *before, const char *after) {
    if (metrics_has_nan(after)) return;
    history_row(&m->history.final, name, before && metrics_has_nan(before) ? NULL : before, after);
}

/* ---- a step ---- */

/* Sets a metric of the current step. If a key is set twice, the later value counts. NaN and infinity are written as
 * null. */
static inline void metrics_set(Metrics *m, const char *key, double value) {
    for (size_t i = 0; i < m->count; i++)
        if (!strcmp(m->names[i], key)) {
            m->values[i] = value;
            return;
        }
    if (m->count == m->capacity) {
        m->capacity = m->capacity ? 2 * m->capacity : 64;
        m->names = (char **)xrealloc(m->names, m->capacity, sizeof *m->names);
        m->values = (double *)xrealloc(m->values, m->capacity, sizeof *m->values);
    }
    m->names[m->count] = utf8_copy(key);
    m->values[m->count++] = value;
}

/* Adds the distribution of the finite ones of n values to the current step. Only TensorBoard shows it. */
static inline void metrics_distribution(Metrics *m, const char *key, const double *values, size_t n) {
    if (!m->board.file) return;
    m->distributions =
        (struct MetricsValues *)xrealloc(m->distributions, m->distribution_count + 1, sizeof *m->distributions);
    struct MetricsValues *d = &m->distributions[m->distribution_count++];
    *d = (struct MetricsValues){utf8_copy(key), (double *)xmalloc(n * sizeof *values), n};
    memcpy(d->values, values, n * sizeof *values);
}

/* Sets a metric of an evaluation: eval_KEY, or eval_SET_KEY of a set of its records. */
static inline void metrics_set_of(Metrics *m, const char *set, const char *key, double value) {
    TextBuffer name = {0};
    text_format(&name, "eval_%s%s%s", set ? set : "", set ? "_" : "", key);
    metrics_set(m, name.text, value);
    text_free(&name);
}

/* The record of the run's end or, while it goes on, of its state so far; the caller owns it. */
static inline json_t *metrics_end_record(Metrics *m, const char *status) {
    json_t *record = (json_t *)checked_object(json_object(), "a JSON object"), *final = json_array();
    json_object_set_new(record, "record", json_string("end"));
    json_object_set_new(record, "time", json_real(clock_date()));
    json_object_set_new(record, "status", run_text(status));
    json_object_set_new(record, "steps", json_integer(m->history.last_step));
    const double speed = history_speed(&m->history);
    if (speed > 0) json_object_set_new(record, "tokens_per_second", json_real(speed));
    json_object_set_new(record, "seconds", phase_seconds(&m->phases));
    json_object_set_new(record, "warnings", run_warnings());
    if (warning_list()->further)
        json_object_set_new(record, "further_warnings", json_integer((json_int_t)warning_list()->further));
    for (size_t i = 0; i < m->history.final.count; i++) {
        const HistoryRow *row = &m->history.final.rows[i];
        json_array_append_new(
            final, json_pack("{s:s, s:s?, s:s?}", "name", row->name, "before", row->value, "after", row->after));
    }
    json_object_set_new(record, "final", final);
    json_object_update(record, m->results);
    return record;
}

/* Writes the page, and determines when the next one is due. running: the run has not ended. */
static inline bool metrics_report(Metrics *m, bool running, Error *e) {
    const double now = clock_seconds();
    m->reported = now;
    m->history.seconds = m->carried + now - m->clock;
    if (m->start) history_end(&m->history, metrics_end_record(m, running ? "running" : m->status));
    m->history.rollouts = m->rollouts ? &m->rollouts->kept : NULL;
    m->history.rollouts_failed = m->rollouts && m->rollouts->failed.text[0] ? m->rollouts->failed.text : NULL;
    const bool ok = !m->report_path || report_write(&m->history, m->report_path, running, e);
    m->report_wait = fmax(60, 200 * (clock_seconds() - now));
    return ok;
}

/* Writes the metrics set since the last step, as one line and one event, and clears them. */
static inline bool metrics_step(Metrics *m, int64_t step, Error *e) {
    if (m->failed.text[0]) return error_set(e, "%s", m->failed.text);
    const RunPhase before = metrics_phase(m, RUN_SAVING);
    if (!metrics_begin(m, e)) return false;
    const double time = clock_date();
    history_line(&m->history, step, time);
    bool ok = true;
    if (m->jsonl) {
        char number[32];
        fprintf(m->jsonl, "{\"step\":%lld,\"time\":%.3f", (long long)step, time);
        for (size_t i = 0; i < m->count; i++) {
            fputc(',', m->jsonl);
            metrics_json_text(m->jsonl, m->names[i]);
            json_number_text(m->values[i], number);
            fprintf(m->jsonl, ":%s", number);
        }
        fputs("}\n", m->jsonl);
        ok = metrics_flush(m->jsonl, m->jsonl_path, e);
    }
    if (ok && m->board.file)
        ok = tensorboard_step(&m->board, time, step, (const char *const *)m->names, m->values, m->count, e);
    ok = metrics_write_distributions(m, time, step, ok, e);
    for (size_t i = 0; i < m->count; i++) {
        history_value(&m->history, m->names[i], step, m->values[i]);
        free(m->names[i]);
    }
    m->count = 0;
    const bool live = m->report_path && strcmp(m->report_path, "-");
    if (ok && live && clock_seconds() - m->reported > m->report_wait) ok = metrics_report(m, true, e);
    metrics_phase(m, before);
    return ok;
}

/* Opens the samples file if there is one; false if there is none or it cannot be written. */
static inline bool metrics_open_samples(Metrics *m) {
    if (!m->samples_path || m->failed.text[0] || !metrics_begin(m, &m->failed)) return false;
    return m->samples || (m->samples = metrics_append(m->samples_path, &m->failed));
}

/* Writes the beginning of a sample's line: the step and `count` texts with their keys. */
static inline void metrics_texts(FILE *f, int64_t step, const char *part[][2], size_t count) {
    fprintf(f, "{\"step\":%lld", (long long)step);
    for (size_t i = 0; i < count; i++) {
        fprintf(f, ",\"%s\":", part[i][0]);
        metrics_json_text(f, part[i][1]);
    }
}

/* Writes text as a block of code in Markdown, after a line with its name. */
static inline void metrics_block(TextBuffer *out, const char *what, const char *text) {
    if (!*text) return;
    text_format(out, "%s:\n\n", what);
    for (const char *line = text; *line;) {
        const int n = (int)strcspn(line, "\n");
        text_format(out, "    %.*s\n", n, line);
        line += n + (line[n] == '\n');
    }
    text_append(out, "\n", 1);
}

/* Writes the last sample as a text of TensorBoard, "samples/3" for the third that was taken at the same time. */
static inline void metrics_board_sample(Metrics *m) {
    const Sample *s = &m->history.samples[m->history.sample_count - 1];
    size_t number = 0;
    for (size_t i = 0; i < m->history.sample_count; i++) number += !strcmp(m->history.samples[i].when, s->when);
    char tag[40], reward[32];
    TextBuffer text = {0};
    snprintf(tag, sizeof tag, "samples/%zu", number);
    json_number_text(s->reward, reward);
    metrics_block(&text, "prompt", s->prompt);
    metrics_block(&text, "completion", s->completion);
    metrics_block(&text, "answer", s->answer);
    if (isfinite(s->reward)) text_format(&text, "reward: %s\n", reward);
    text_append(&text, "", 1);
    tensorboard_text(&m->board, clock_date(), s->step, tag, text.text, &m->failed);
    text_free(&text);
}

/* Adds a completion to the report, to the samples file and to TensorBoard. when: "before", "after" or "step 20"; samples
 * of one prompt are shown side by side. answer may be NULL; reward is NaN if the completion was not scored. */
static inline void metrics_sample(Metrics *m, const char *when, const char *prompt, const char *completion,
                                  const char *answer, double reward) {
    if (m->samples_kept && !strcmp(when, "before")) return; /* recorded before resuming */
    long long step = (long long)m->history.last_step;
    sscanf(when, "step %lld", &step);
    history_sample(&m->history, step, when, prompt, completion, answer, reward);
    if (m->board.file && !m->failed.text[0]) metrics_board_sample(m);
    if (!metrics_open_samples(m)) return;
    const Sample *s = &m->history.samples[m->history.sample_count - 1];
    const char *part[][2] = {
        {"when", s->when}, {"prompt", s->prompt}, {"completion", s->completion}, {"answer", s->answer}};
    metrics_texts(m->samples, step, part, sizeof part / sizeof *part);
    char number[32];
    json_number_text(reward, number);
    fprintf(m->samples, ",\"reward\":%s}\n", number);
    metrics_flush(m->samples, m->samples_path, &m->failed);
}

/* Adds a preference pair with the model's scores of both answers to the report and to the samples file. when: as in
 * metrics_sample(). A score is NaN if there is none. */
static inline void metrics_pair(Metrics *m, const char *when, const char *prompt, const char *chosen,
                                const char *rejected, double chosen_reward, double rejected_reward) {
    if (m->pairs_kept && !strcmp(when, "before")) return;
    const int64_t step = m->history.last_step;
    history_pair(&m->history, step, when, prompt, chosen, rejected, chosen_reward, rejected_reward);
    if (!metrics_open_samples(m)) return;
    const HistoryPair *p = &m->history.pairs[m->history.pair_count - 1];
    const char *part[][2] = {
        {"when", p->when}, {"prompt", p->prompt}, {"chosen", p->chosen}, {"rejected", p->rejected}};
    metrics_texts(m->samples, step, part, sizeof part / sizeof *part);
    char a[32], b[32];
    json_number_text(p->chosen_reward, a);
    json_number_text(p->rejected_reward, b);
    fprintf(m->samples, ",\"chosen_reward\":%s,\"rejected_reward\":%s}\n", a, b);
    metrics_flush(m->samples, m->samples_path, &m->failed);
}

/* Adds a labelled solution with the model's score of each step to the report and to the samples file. steps: see
 * HistorySolution; it is taken over. when: as in metrics_sample(). */
static inline void metrics_solution(Metrics *m, const char *when, const char *prompt, json_t *steps) {
    const int64_t step = m->history.last_step;
    if (m->solutions_kept && !strcmp(when, "before")) {
        json_decref(steps);
        return;
    }
    history_solution(&m->history, step, when, prompt, steps);
    if (!metrics_open_samples(m)) return;
    const HistorySolution *s = &m->history.solutions[m->history.solution_count - 1];
    const char *part[][2] = {{"when", s->when}, {"prompt", s->prompt}};
    metrics_texts(m->samples, step, part, sizeof part / sizeof *part);
    char *list = json_dump_short(s->steps, JSON_COMPACT);
    fprintf(m->samples, ",\"steps\":%s}\n", list);
    free(list);
    metrics_flush(m->samples, m->samples_path, &m->failed);
}

/* ---- the progress line ---- */

/* Removes the progress line so that other output can be printed. */
static inline void metrics_clear(Metrics *m) {
    if (m->shown) fputs("\r\033[K", stderr);
    m->shown = false;
}

/* Prints a line to standard error, above the progress line. */
static inline void metrics_print(Metrics *m, const char *format, va_list args) {
    metrics_clear(m);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

/* Prints a line about the course of the run. */
PRINTF_LIKE(2, 3) static inline void metrics_line(Metrics *m, const char *format, ...) {
    va_list args;
    if (m->quiet || m->brief) return;
    va_start(args, format);
    metrics_print(m, format, args);
    va_end(args);
}

/* Prints a line that is shown with --quiet, too: the last of the run, or a file that was written. */
PRINTF_LIKE(2, 3) static inline void metrics_notice(Metrics *m, const char *format, ...) {
    va_list args;
    if (m->quiet) return;
    va_start(args, format);
    metrics_print(m, format, args);
    va_end(args);
}

/* Prints a warning, with the program's name before it. It is shown with --quiet, too. */
PRINTF_LIKE(2, 3) static inline void metrics_warn(Metrics *m, const char *format, ...) {
    va_list args;
    char text[1024];
    if (m->quiet) return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    metrics_clear(m);
    fprintf(stderr, "%s: warning: %s\n", m->history.program, text);
    warning_keep(text);
}

/* Writes a record of rollouts.h, which is taken over, and keeps it for the report. If the file cannot be written, a
 * warning says so and the run goes on. */
static inline void metrics_rollout(Metrics *m, json_t *record) {
    const bool failed = m->rollouts->failed.text[0];
    rollouts_add(m->rollouts, record);
    if (!failed && m->rollouts->failed.text[0])
        metrics_warn(m, "%s; no further rollouts are written, and the run goes on", m->rollouts->failed.text);
}

/* Prints a line of numbers in parts separated by " | ", without the parts that are NaN. */
PRINTF_LIKE(2, 3) static inline void metrics_summary(Metrics *m, const char *format, ...) {
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    metrics_drop_nan(line);
    metrics_line(m, "%s", line);
}

/* Shows the run's progress on one line of standard error that is overwritten in place, if standard error is a terminal.
 * The rate is an exponential average over about fifty steps. May be called at any time, also within a step; the line is
 * redrawn at most once per m->interval. text (the current activity, or the latest numbers) may be NULL. steps: 0 if the
 * total is unknown. */
static inline void metrics_progress(Metrics *m, int64_t step, int64_t steps, const char *text) {
    if (!m->terminal || m->quiet || m->brief) return;
    const double now = clock_seconds(), decay = 0.98;
    const int64_t passed = step - m->progress_step;
    if (m->progress_step < 0 || passed < 0) {
        m->progress_step = step;
        m->step_clock = now;
    } else if (passed > 0) {
        const double keep = pow(decay, (double)passed);
        m->step_seconds = keep * m->step_seconds + (1 - keep) * (now - m->step_clock) / (double)passed;
        m->step_weight = keep * m->step_weight + (1 - keep);
        m->progress_step = step;
        m->step_clock = now;
    }
    if (m->shown && now - m->drawn < m->interval && step != steps) return;
    const int width = terminal_width(STDERR_FILENO);
    const double seconds = m->step_weight > 0 ? m->step_seconds / m->step_weight : 0;
    char line[1024];
    progress_draw(line, sizeof line, width - 1, step, steps, seconds > 0 ? 1 / seconds : 0, text);
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
    m->shown = true;
    m->drawn = now;
}

/* ---- the end ---- */

/* Ends the record: writes the report, closes the files and frees m, even after a failure. */
static inline bool metrics_close(Metrics *m, Error *e) {
    metrics_clear(m);
    bool ok = !m->failed.text[0] || error_set(e, "%s", m->failed.text);
    metrics_phase(m, RUN_SAVING);
    ok = ok && metrics_begin(m, e) && metrics_report(m, false, e);
    if (ok && m->start) ok = metrics_record(m, m->history.end, e);
    if (m->jsonl == stdout) ok = ok && metrics_flush(stdout, m->jsonl_path, e);
    else if (m->jsonl && fclose(m->jsonl) && ok)
        ok = error_set(e, "%s: cannot write: %s", m->jsonl_path, strerror(errno));
    m->jsonl = NULL;
    if (m->samples && fclose(m->samples) && ok)
        ok = error_set(e, "%s: cannot write: %s", m->samples_path, strerror(errno));
    m->samples = NULL;
    if (!tensorboard_close(&m->board, ok ? e : NULL)) ok = false;
    metrics_free(m);
    return ok;
}

#endif
