/* history.h - a run's history in memory: curves, sample completions, configuration and final numbers.
 *
 * A History is plain data. metrics.h fills it during the run and reads it back from metrics.jsonl when a run is
 * resumed; report.h turns it into a page. All text is made valid UTF-8 when it is added, because a model's output may
 * be invalid: each byte that belongs to no character becomes U+FFFD.
 *
 *     History h = {0};
 *     history_value(&h, "reward", 1, 0.25);          // series appear in the order of their first value
 *     history_value(&h, "reward", 2, NAN);           // a gap in the curve
 *     history_sample(&h, 0, "before", "2+3=", "6", "5", 0.0);
 *     history_free(&h);
 */
#ifndef LLMC_REPORT_HISTORY_H
#define LLMC_REPORT_HISTORY_H

#include "../base/error.h" /* xrealloc, error_set, Error */
#include "../base/text.h"  /* utf8_copy */
#include <jansson.h>
#include <math.h>

typedef struct Series {
    char *key;      /* the metric's name */
    int64_t *steps; /* (count) as logged: increasing, not always by one */
    double *values; /* (count) NaN if the value was not finite */
    size_t count, capacity;
} Series;

typedef struct Sample {
    char *when; /* "before", "after", "step 20", ... */
    char *prompt, *completion, *answer;
    double reward; /* NaN if unscored */
    int64_t step;
} Sample;

typedef struct HistoryRow { /* configuration: name, value; final numbers: name, before, after. NULL if not given */
    char *name, *value, *after;
} HistoryRow;

typedef struct HistoryRows {
    HistoryRow *rows;
    size_t count;
} HistoryRows;

typedef struct History {
    char *program;
    Series *series;
    size_t series_count;
    Sample *samples;
    size_t sample_count;
    HistoryRows header, config, final; /* header: each line is a name without values */
    int64_t first_step, last_step;
    size_t lines;       /* steps logged, including those before resuming */
    double seconds;     /* running time, without the pauses between the parts of a resumed run */
    double finished_at; /* Unix time of the last line; 0 before the first */
} History;

/* ---- filling in ---- */

/* Returns the series named `key`, or NULL. */
static inline const Series *history_find(const History *h, const char *key) {
    for (size_t i = 0; i < h->series_count; i++)
        if (!strcmp(h->series[i].key, key)) return &h->series[i];
    return NULL;
}

/* Appends a value to the series `key`, which is created if necessary. Non-finite values are stored as NaN. */
static inline void history_value(History *h, const char *key, int64_t step, double value) {
    Series *s = (Series *)history_find(h, key);
    if (!s) {
        h->series = (Series *)xrealloc(h->series, h->series_count + 1, sizeof *h->series);
        s = &h->series[h->series_count++];
        *s = (Series){.key = utf8_copy(key)};
    }
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 64;
        s->steps = (int64_t *)xrealloc(s->steps, s->capacity, sizeof *s->steps);
        s->values = (double *)xrealloc(s->values, s->capacity, sizeof *s->values);
    }
    s->steps[s->count] = step;
    s->values[s->count++] = isfinite(value) ? value : NAN;
}

/* Records that a line was logged for `step` at that Unix time. */
static inline void history_line(History *h, int64_t step, double time) {
    if (!h->lines++) h->first_step = step;
    h->last_step = step;
    h->finished_at = time;
}

static inline void history_sample(History *h, int64_t step, const char *when, const char *prompt,
                                  const char *completion, const char *answer, double reward) {
    h->samples = (Sample *)xrealloc(h->samples, h->sample_count + 1, sizeof *h->samples);
    h->samples[h->sample_count++] = (Sample){utf8_copy(when ? when : ""),
                                             utf8_copy(prompt ? prompt : ""),
                                             utf8_copy(completion ? completion : ""),
                                             utf8_copy(answer ? answer : ""),
                                             reward,
                                             step};
}

static inline void history_row(HistoryRows *rows, const char *name, const char *value, const char *after) {
    rows->rows = (HistoryRow *)xrealloc(rows->rows, rows->count + 1, sizeof *rows->rows);
    rows->rows[rows->count++] = (HistoryRow){utf8_copy(name ? name : ""), utf8_copy(value), utf8_copy(after)};
}

static inline void history_free(History *h) {
    for (size_t i = 0; i < h->series_count; i++) {
        free(h->series[i].key);
        free(h->series[i].steps);
        free(h->series[i].values);
    }
    for (size_t i = 0; i < h->sample_count; i++) {
        free(h->samples[i].when);
        free(h->samples[i].prompt);
        free(h->samples[i].completion);
        free(h->samples[i].answer);
    }
    const HistoryRows *all[] = {&h->header, &h->config, &h->final};
    for (size_t k = 0; k < 3; k++) {
        for (size_t i = 0; i < all[k]->count; i++) {
            free(all[k]->rows[i].name);
            free(all[k]->rows[i].value);
            free(all[k]->rows[i].after);
        }
        free(all[k]->rows);
    }
    free(h->series);
    free(h->samples);
    free(h->program);
    *h = (History){0};
}

/* ---- reading files written by metrics.h ---- */

typedef enum { LINE_KEPT, LINE_LATER, LINE_BROKEN } HistoryLine;

/* Adds one line of metrics.jsonl to h. LINE_LATER: the line's step is after `last`, and h is unchanged. LINE_BROKEN:
 * the line is not an object with an integer "step", and e has the reason. Values that are not numbers become gaps. */
static inline HistoryLine history_read_line(History *h, const char *line, size_t n, int64_t last, Error *e) {
    json_error_t why;
    json_t *object = json_loadb(line, n, 0, &why);
    const json_t *step = json_object_get(object, "step");
    if (!json_is_integer(step)) {
        if (object) error_set(e, "a line without an integer \"step\", expected an object with one");
        else error_set(e, "not JSON: %s, expected an object with a \"step\"", why.text);
        json_decref(object);
        return LINE_BROKEN;
    }
    const int64_t at = json_integer_value(step);
    if (at > last) {
        json_decref(object);
        return LINE_LATER;
    }
    const double before = h->finished_at, time = json_number_value(json_object_get(object, "time"));
    if (h->lines && time > before) h->seconds += time - before;
    history_line(h, at, time);
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        if (strcmp(key, "step") && strcmp(key, "time"))
            history_value(h, key, at, json_is_number(value) ? json_number_value(value) : NAN);
    }
    json_decref(object);
    return LINE_KEPT;
}

/* Adds one line of the samples file to h, in the same way as history_read_line(). */
static inline HistoryLine history_read_sample(History *h, const char *line, size_t n, int64_t last, Error *e) {
    json_error_t why;
    json_int_t step = 0;
    json_t *reward = NULL, *object = json_loadb(line, n, 0, &why);
    const char *when, *prompt, *completion, *answer;
    HistoryLine result = LINE_BROKEN;
    if (!object) error_set(e, "not JSON: %s, expected a sample", why.text);
    else if (json_unpack_ex(object, &why, 0, "{s:I, s:s, s:s, s:s, s:s, s:o}", "step", &step, "when", &when, "prompt",
                            &prompt, "completion", &completion, "answer", &answer, "reward", &reward))
        error_set(e, "not a sample: %s", why.text);
    else {
        /* an "after" sample was taken at the end of an earlier part, which is not the end of the run */
        result = step > last || !strcmp(when, "after") ? LINE_LATER : LINE_KEPT;
        if (result == LINE_KEPT)
            history_sample(h, step, when, prompt, completion, answer,
                           json_is_number(reward) ? json_number_value(reward) : NAN);
    }
    json_decref(object);
    return result;
}

#endif
