/* best_model.h - the best evaluation of a run, and the end of a run that no longer improves.
 *
 * --metric-for-best-model names the metric that is compared, as in transformers, with or without "eval_". Without it, it
 * is the first of eval_loss, eval_accuracy and eval_reward that an evaluation sets. Higher values are better unless the
 * name ends in "loss", or as --greater-is-better says. A value that is not finite is never the best.
 *
 * The rules are those of transformers (Trainer._determine_best_metric, EarlyStoppingCallback.check_metric_value): an
 * evaluation is the best if its value is better than all before; it counts as an improvement if it is better by more
 * than --early-stopping-threshold, and the run ends after --early-stopping-patience evaluations in a row without one.
 * The evaluation before the first step does not count, since its model is an input of the run.
 *
 *     BestOptions o = {.patience = 2};
 *     BestModel b = best_model_new(&o);
 *     best_model_name(&b, "eval_loss");
 *     const double loss[] = {1.5, 1.2, 1.3, 1.25};
 *     for (int step = 1; step <= 4 && !best_model_over(&b); step++)
 *         if (best_model_update(&b, step, loss[step - 1])) printf("step %d\n", step); // steps 1 and 2; over after step 4
 *     best_model_free(&b);
 */
#ifndef LLMC_TRAIN_BEST_MODEL_H
#define LLMC_TRAIN_BEST_MODEL_H

#include "../base/error.h"   /* xstrdup */
#include "../base/options.h" /* OPTION_TEXT, OPTION_CHOICE, OPTION_INT, OPTION_REAL */
#include <jansson.h>
#include <math.h>

typedef enum { GREATER_AUTO, GREATER_TRUE, GREATER_FALSE } GreaterIsBetter;

typedef struct BestOptions {
    const char *file, *metric;
    int greater; /* a GreaterIsBetter */
    int64_t patience;
    double threshold;
} BestOptions;

#define GREATER_CHOICES "auto|true|false"

// clang-format off
#define BEST_OPTIONS(o)                                                                                                \
    OPTION_TEXT  ("best",                     0, &(o).file,      "FILE",                                               \
                  "also write the model of the best evaluation here"),                                                 \
    OPTION_TEXT  ("metric-for-best-model",    0, &(o).metric,    "NAME",                                               \
                  "metric of the evaluation that is compared (default: loss, else accuracy, else reward)"),            \
    OPTION_CHOICE("greater-is-better",        0, &(o).greater,   GREATER_CHOICES,                                      \
                  "whether a higher value is better; auto: unless the metric's name ends in loss"),                    \
    OPTION_INT   ("early-stopping-patience",  0, &(o).patience,  0, 1e9,                                               \
                  "end the run after N evaluations in a row without an improvement; 0: never"),                        \
    OPTION_REAL  ("early-stopping-threshold", 0, &(o).threshold, 0, 1e9,                                               \
                  "an improvement is better than the best value by more than this")
// clang-format on

typedef struct BestModel {
    const BestOptions *o;
    char *metric;   /* full name; NULL until it is set */
    bool greater;   /* is better */
    double value;   /* the best so far; NaN before the first */
    int64_t step;   /* that of the best evaluation */
    int64_t waited; /* evaluations since the last improvement */
} BestModel;

static inline BestModel best_model_new(const BestOptions *o) { return (BestModel){.o = o, .value = NAN}; }

static inline void best_model_free(BestModel *b) {
    free(b->metric);
    *b = (BestModel){0};
}

/* Sets the metric: its name in the metrics of an evaluation. */
static inline void best_model_name(BestModel *b, const char *metric) {
    const size_t n = strlen(metric);
    free(b->metric);
    b->metric = xstrdup(metric);
    b->greater =
        b->o->greater == GREATER_AUTO ? n < 4 || strcmp(metric + n - 4, "loss") != 0 : b->o->greater == GREATER_TRUE;
}

/* Takes the metric's value at an evaluation. Returns true if it is the best so far. */
static inline bool best_model_update(BestModel *b, int64_t step, double value) {
    const bool first = isnan(b->value);
    const bool better = isfinite(value) && (first || (b->greater ? value > b->value : value < b->value));
    b->waited = better && (first || fabs(value - b->value) > b->o->threshold) ? 0 : b->waited + 1;
    if (better) b->value = value, b->step = step;
    return better;
}

/* Whether the run is to end. */
static inline bool best_model_over(const BestModel *b) { return b->o->patience && b->waited >= b->o->patience; }

/* Stores the best evaluation in a training state, and takes it from there; that of another metric is not taken. */
static inline void best_model_save(const BestModel *b, json_t *state) {
    if (isnan(b->value)) return;
    json_object_set_new(
        state, "best",
        json_pack("{s:s, s:f, s:I}", "metric", b->metric, "value", b->value, "waited", (json_int_t)b->waited));
    json_object_set_new(state, "best_step", json_integer(b->step));
}

static inline void best_model_resume(BestModel *b, const json_t *state) {
    const json_t *best = json_object_get(state, "best");
    const char *metric = json_string_value(json_object_get(best, "metric"));
    if (!metric || !b->metric || strcmp(metric, b->metric)) return;
    b->value = json_number_value(json_object_get(best, "value"));
    b->waited = json_integer_value(json_object_get(best, "waited"));
    b->step = json_integer_value(json_object_get(state, "best_step"));
}

#endif
