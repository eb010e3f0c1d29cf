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

#include "../base/error.h" /* error_set, xrealloc, Error, checked_object */
#include "../base/text.h"  /* utf8_copy */
#include "rollouts.h"      /* Rollouts */
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

/* A preference pair with the scores that the model gives both answers at some time of the run. */
typedef struct HistoryPair {
    char *when; /* as in Sample */
    char *prompt, *chosen, *rejected;
    double chosen_reward, rejected_reward; /* NaN if not finite */
    int64_t step;
} HistoryPair;

/* A labelled solution with the score that the model gives each step at some time of the run. */
typedef struct HistorySolution {
    char *when; /* as in Sample */
    char *prompt;
    json_t *steps; /* objects with "text", "label" in [0, 1] and "score", a logit, or null if it was not finite */
    int64_t step;
} HistorySolution;

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
    HistoryPair *pairs;
    size_t pair_count;
    HistorySolution *solutions;
    size_t solution_count;
    json_t *starts; /* array of the records with which the run and its resumed parts began (run_facts.h), or NULL */
    json_t *end;    /* the record of the run's end, or of its state so far, or NULL */
    HistoryRows header, config, final; /* header: each line is a name without values */
    Series times;                      /* Unix time of each line */
    const Rollouts *rollouts;          /* completions of some steps, or NULL; not owned */
    const char *rollouts_failed;       /* why the file of the rollouts ends early, or NULL */
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

/* The value of a series at a step, or NaN. */
static inline double series_at(const Series *s, int64_t step) {
    size_t low = 0, high = s ? s->count : 0;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (s->steps[middle] < step) low = middle + 1;
        else high = middle;
    }
    return s && low < s->count && s->steps[low] == step ? s->values[low] : NAN;
}

/* Unix time at which the run began, or of its first line; only if there is a line. */
static inline double history_began(const History *h) {
    const json_t *time = json_object_get(json_array_get(h->starts, 0), "time");
    return json_is_number(time) ? json_number_value(time) : h->times.values[0];
}

/* Appends a value. */
static inline void series_add(Series *s, int64_t step, double value) {
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 64;
        s->steps = (int64_t *)xrealloc(s->steps, s->capacity, sizeof *s->steps);
        s->values = (double *)xrealloc(s->values, s->capacity, sizeof *s->values);
    }
    s->steps[s->count] = step;
    s->values[s->count++] = isfinite(value) ? value : NAN;
}

/* Appends a value to the series `key`, which is created if necessary. Non-finite values are stored as NaN. */
static inline void history_value(History *h, const char *key, int64_t step, double value) {
    Series *s = (Series *)history_find(h, key);
    if (!s) {
        h->series = (Series *)xrealloc(h->series, h->series_count + 1, sizeof *h->series);
        s = &h->series[h->series_count++];
        *s = (Series){.key = utf8_copy(key)};
    }
    series_add(s, step, value);
}

/* Records that a line was logged for `step` at that Unix time. */
static inline void history_line(History *h, int64_t step, double time) {
    if (!h->lines++) h->first_step = step;
    h->last_step = step;
    h->finished_at = time;
    series_add(&h->times, step, time);
}

/* Tokens per second of the logged steps, validation and samples excluded, from num_tokens and step_time; 0 if they are
 * not logged. */
static inline double history_speed(const History *h) {
    const Series *tokens = history_find(h, "num_tokens"), *time = history_find(h, "step_time");
    if (!tokens || !time || !tokens->count || !time->count) return 0;
    /* what the first step has counted is its own only if it is the first of the run */
    const bool whole = tokens->steps[0] == 1;
    double seconds = 0;
    for (size_t i = 0; i < time->count; i++)
        if (isfinite(time->values[i]) && (whole || time->steps[i] > tokens->steps[0])) seconds += time->values[i];
    const double all = tokens->values[tokens->count - 1] - (whole ? 0 : tokens->values[0]);
    return seconds > 0 && isfinite(all) ? all / seconds : 0;
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

static inline void history_pair(History *h, int64_t step, const char *when, const char *prompt, const char *chosen,
                                const char *rejected, double chosen_reward, double rejected_reward) {
    h->pairs = (HistoryPair *)xrealloc(h->pairs, h->pair_count + 1, sizeof *h->pairs);
    h->pairs[h->pair_count++] = (HistoryPair){utf8_copy(when),
                                              utf8_copy(prompt),
                                              utf8_copy(chosen),
                                              utf8_copy(rejected),
                                              isfinite(chosen_reward) ? chosen_reward : NAN,
                                              isfinite(rejected_reward) ? rejected_reward : NAN,
                                              step};
}

/* Adds a solution; takes steps over. */
static inline void history_solution(History *h, int64_t step, const char *when, const char *prompt, json_t *steps) {
    h->solutions = (HistorySolution *)xrealloc(h->solutions, h->solution_count + 1, sizeof *h->solutions);
    h->solutions[h->solution_count++] = (HistorySolution){utf8_copy(when), utf8_copy(prompt), steps, step};
}

/* Adds the record of a beginning; takes it over. */
static inline void history_start(History *h, json_t *record) {
    if (!h->starts) h->starts = (json_t *)checked_object(json_array(), "a JSON array");
    json_array_append_new(h->starts, record);
}

/* Sets the record of the end; takes it over. */
static inline void history_end(History *h, json_t *record) {
    json_decref(h->end);
    h->end = record;
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
    for (size_t i = 0; i < h->pair_count; i++) {
        free(h->pairs[i].when);
        free(h->pairs[i].prompt);
        free(h->pairs[i].chosen);
        free(h->pairs[i].rejected);
    }
    free(h->pairs);
    for (size_t i = 0; i < h->solution_count; i++) {
        free(h->solutions[i].when);
        free(h->solutions[i].prompt);
        json_decref(h->solutions[i].steps);
    }
    free(h->solutions);
    json_decref(h->starts);
    json_decref(h->end);
    const HistoryRows *all[] = {&h->header, &h->config, &h->final};
    for (size_t k = 0; k < 3; k++) {
        for (size_t i = 0; i < all[k]->count; i++) {
            free(all[k]->rows[i].name);
            free(all[k]->rows[i].value);
            free(all[k]->rows[i].after);
        }
        free(all[k]->rows);
    }
    free(h->times.steps);
    free(h->times.values);
    free(h->series);
    free(h->samples);
    free(h->program);
    *h = (History){0};
}

/* ---- reading files written by metrics.h ---- */

typedef enum { LINE_KEPT, LINE_LATER, LINE_BROKEN } HistoryLine;

/* A number that was read, or NaN for anything else. */
static inline double history_number(const json_t *value) {
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* Adds a record of the run's beginning or end to h and takes it over. A part that was resumed from a later step than
 * `last` is left out, and so is the end, unless `last` is INT64_MAX: the run goes on. */
static inline HistoryLine history_read_record(History *h, json_t *object, const char *kind, int64_t last, Error *e) {
    const bool start = !strcmp(kind, "start"), end = !strcmp(kind, "end");
    const bool kept = start ? json_integer_value(json_object_get(object, "resumed_step")) <= last : last == INT64_MAX;
    if (!start && !end) error_set(e, "a record \"%.40s\", expected \"start\" or \"end\"", kind);
    if (start && kept) history_start(h, object);
    else if (end && kept) history_end(h, object);
    else json_decref(object);
    return !start && !end ? LINE_BROKEN : kept ? LINE_KEPT : LINE_LATER;
}

/* Whether an object, NULL if the line is not JSON because of `why`, is the line of a step: "step" is an integer, and all
 * other values are numbers, or null if they were not finite. */
static inline bool history_is_step(json_t *object, const json_error_t *why, Error *e) {
    const char *key;
    json_t *value;
    if (!object) return error_set(e, "not JSON: %s, expected an object with a \"step\"", why->text);
    if (!json_is_integer(json_object_get(object, "step")))
        return error_set(e, "a line without an integer \"step\", expected an object with one");
    json_object_foreach(object, key, value) {
        if (!json_is_number(value) && !json_is_null(value))
            return error_set(e, "\"%.40s\" is neither a number nor null", key);
    }
    return true;
}

/* Adds one line of metrics.jsonl to h; a null becomes a gap. LINE_LATER: the line's step is after `last`, and h is
 * unchanged. LINE_BROKEN: the line is not one that metrics.h writes, and e has the reason. */
static inline HistoryLine history_read_line(History *h, const char *line, size_t n, int64_t last, Error *e) {
    json_error_t why;
    json_t *object = json_loadb(line, n, 0, &why);
    const char *record = json_string_value(json_object_get(object, "record"));
    if (record) return history_read_record(h, object, record, last, e);
    const bool whole = history_is_step(object, &why, e);
    const int64_t at = json_integer_value(json_object_get(object, "step"));
    if (!whole || at > last) {
        json_decref(object);
        return whole ? LINE_LATER : LINE_BROKEN;
    }
    const double before = h->finished_at, time = json_number_value(json_object_get(object, "time"));
    if (h->lines && time > before) h->seconds += time - before;
    history_line(h, at, time);
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        if (strcmp(key, "step") && strcmp(key, "time")) history_value(h, key, at, history_number(value));
    }
    json_decref(object);
    return LINE_KEPT;
}

/* Whether a record of the samples file is kept by a run that continues after step `last`. One with "after" was made at the end
 * of an earlier part, which is not the end of the run. */
static inline HistoryLine history_when(int64_t step, const char *when, int64_t last) {
    return step > last || (!strcmp(when, "after") && last != INT64_MAX) ? LINE_LATER : LINE_KEPT;
}

/* Adds a pair of the samples file, which is taken over, to h, in the same way as history_read_line(). */
static inline HistoryLine history_read_pair(History *h, json_t *object, int64_t last, Error *e) {
    json_error_t why;
    json_int_t step = 0;
    const char *when, *prompt, *chosen, *rejected;
    json_t *reward[2];
    HistoryLine result = LINE_BROKEN;
    if (json_unpack_ex(object, &why, 0, "{s:I, s:s, s:s, s:s, s:s, s:o, s:o}", "step", &step, "when", &when, "prompt",
                       &prompt, "chosen", &chosen, "rejected", &rejected, "chosen_reward", &reward[0],
                       "rejected_reward", &reward[1]))
        error_set(e, "not a pair: %s", why.text);
    else {
        result = history_when(step, when, last);
        if (result == LINE_KEPT)
            history_pair(h, step, when, prompt, chosen, rejected, history_number(reward[0]), history_number(reward[1]));
    }
    json_decref(object);
    return result;
}

/* Whether a list has the steps of a solution, at least one. */
static inline bool history_is_steps(const json_t *steps) {
    bool ok = json_array_size(steps) > 0;
    for (size_t i = 0; ok && i < json_array_size(steps); i++) {
        const json_t *step = json_array_get(steps, i), *score = json_object_get(step, "score");
        const double label = history_number(json_object_get(step, "label"));
        ok = json_is_string(json_object_get(step, "text")) && label >= 0 && label <= 1 &&
             (json_is_number(score) || json_is_null(score));
    }
    return ok;
}

/* Adds a solution of the samples file, which is taken over, to h, in the same way as history_read_line(). */
static inline HistoryLine history_read_solution(History *h, json_t *object, int64_t last, Error *e) {
    json_error_t why;
    json_int_t step = 0;
    const char *when, *prompt;
    json_t *steps;
    HistoryLine result = LINE_BROKEN;
    if (json_unpack_ex(object, &why, 0, "{s:I, s:s, s:s, s:o}", "step", &step, "when", &when, "prompt", &prompt,
                       "steps", &steps))
        error_set(e, "not a solution: %s", why.text);
    else if (!history_is_steps(steps)) error_set(e, "not a solution: \"steps\" is no list of texts, labels and scores");
    else {
        result = history_when(step, when, last);
        if (result == LINE_KEPT) history_solution(h, step, when, prompt, json_incref(steps));
    }
    json_decref(object);
    return result;
}

/* Adds one line of the samples file to h, in the same way as history_read_line(). */
static inline HistoryLine history_read_sample(History *h, const char *line, size_t n, int64_t last, Error *e) {
    json_error_t why;
    json_int_t step = 0;
    json_t *reward = NULL, *object = json_loadb(line, n, 0, &why);
    const char *when, *prompt, *completion, *answer;
    HistoryLine result = LINE_BROKEN;
    if (json_object_get(object, "chosen")) return history_read_pair(h, object, last, e);
    if (json_object_get(object, "steps")) return history_read_solution(h, object, last, e);
    if (!object) error_set(e, "not JSON: %s, expected a sample", why.text);
    else if (json_unpack_ex(object, &why, 0, "{s:I, s:s, s:s, s:s, s:s, s:o}", "step", &step, "when", &when, "prompt",
                            &prompt, "completion", &completion, "answer", &answer, "reward", &reward))
        error_set(e, "not a sample: %s", why.text);
    else {
        result = history_when(step, when, last);
        if (result == LINE_KEPT) history_sample(h, step, when, prompt, completion, answer, history_number(reward));
    }
    json_decref(object);
    return result;
}

#endif
