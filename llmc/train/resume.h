/* resume.h - what a resumed run may change: the options of the command line, compared with those of the run that wrote
 * the state.
 *
 * A state holds the lineage of its model, whose last entry has the options of the run that wrote it. A resumed run is
 * the uninterrupted one only if they are the same, so an option that differs is named and refused. It may differ if
 *
 *   - it cannot change the result: paths of outputs, memory, logging, ranks, evaluation, samples (resume_free())
 *   - it is the path of a file: its contents are compared instead (trainer_file(), the state's hash of the shard)
 *   - it is left out and says where the model came from (-c, --layers, ...), which the state has
 *   - --max-steps or --num-train-epochs is higher: the run is extended, with the learning rates of a run of that length
 *
 *     TextBuffer list = {0};
 *     static const Option options[] = {OPTION_END};
 *     json_t *before = json_object();                                  // {"seed": "42"}, from the lineage
 *     json_t *changes = resume_changes(options, before);               // {"seed": ["42", "7"]}
 *     if (json_object_size(changes)) die("%s", resume_text(changes, &list));
 */
#ifndef LLMC_TRAIN_RESUME_H
#define LLMC_TRAIN_RESUME_H

#include "../base/json_text.h" /* json_utf8 */
#include "../base/options.h"   /* Option, OPT_END, OPT_GROUP, option_value, ... */
#include "../base/text.h"      /* TextBuffer, text_free, text_clear, text_format */
#include <jansson.h>

static inline bool resume_listed(const char *option, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!strcmp(option, list[i])) return true;
    return false;
}

/* Whether an option cannot change the result: paths of outputs, memory, logging, ranks. Such options are not in the
 * lineage. */
static inline bool resume_place(const char *option) {
    // clang-format off
    static const char *const places[] = {
        "output",        "output-dir",    "overwrite-output-dir", "state",    "best",           "resume",
        "metrics",       "tensorboard",   "report",               "quiet",    "micro-tokens",   "recompute",
        "logging-steps", "save-steps",    "save-total-limit",     "zero",     "dist-timeout",
        "critic-output", "prm-output", "adapter-output", "rollouts", "rollout-steps", "rollout-prompts", "rollout-samples",
        "judge-cache", "judge-parallel", "judge-retries", "judge-timeout", "judge-key-env", "judge-insecure",
        "activation-cache"};
    // clang-format on
    return resume_listed(option, places, sizeof places / sizeof *places);
}

/* Whether a resumed run may change an option that is in the lineage: evaluation, samples, the device, outputs. */
static inline bool resume_free(const char *option) {
    static const char *const options[] = {"val",
                                          "eval-steps",
                                          "eval-on-start",
                                          "max-eval-samples",
                                          "eval-samples",
                                          "sample-steps",
                                          "sample-count",
                                          "max-bad-steps",
                                          "sample-tokens",
                                          "slots",
                                          "device",
                                          "dtype",
                                          "output-dtype",
                                          "reward-timeout",
                                          "judge-injection",
                                          "agent-workers",
                                          "agent-timeout",
                                          "max-agent-failures",
                                          "sandbox",
                                          "sandbox-cmd",
                                          "sandbox-workers",
                                          "metric-for-best-model",
                                          "greater-is-better",
                                          "early-stopping-patience",
                                          "early-stopping-threshold"};
    return resume_place(option) || resume_listed(option, options, sizeof options / sizeof *options);
}

/* Whether an option says where the model of a run came from. A resumed run has it from the state. */
static inline bool resume_origin(const char *option) {
    static const char *const options[] = {"checkpoint", "layers", "heads", "width", "vocab", "context"};
    return resume_listed(option, options, sizeof options / sizeof *options);
}

/* Whether an option's value is the path of a file or a folder. */
static inline bool resume_is_path(const Option *o) {
    return (o->kind == OPT_TEXT || o->kind == OPT_LIST) && (strstr(o->argument, "FILE") || strstr(o->argument, "DIR"));
}

/* Whether a resumed run may have this value instead of `before`; "" is an option that is not given. */
static inline bool resume_allows(const Option *o, const char *before, const char *here) {
    if (!strcmp(before, here) || resume_free(o->name)) return true;
    if (resume_origin(o->name) && (!*here || !strcmp(here, "0"))) return true;
    if (!strcmp(o->name, "max-steps") || !strcmp(o->name, "num-train-epochs"))
        return atof(before) > 0 && atof(here) > atof(before);
    return resume_is_path(o) && *before && *here;
}

/* The options of the table that a resumed run must not change and did, with both values: {"NAME": ["BEFORE", "HERE"]}.
 * before: the options of the run that wrote the state, {"NAME": "VALUE"}; one that it does not list had no value, or
 * did not exist then. The caller owns the result. */
static inline json_t *resume_changes(const Option *table, const json_t *before) {
    json_t *changes = json_object();
    TextBuffer value = {0};
    for (const Option *o = table; o->kind != OPT_END; o++) {
        if (o->kind == OPT_GROUP || resume_place(o->name)) continue;
        const char *was = json_string_value(json_object_get(before, o->name));
        if (!was && !option_given(o->value)) continue;
        option_value(o, &value);
        json_t *here = json_utf8(value.text, value.length); /* as it is in `before` */
        if (resume_allows(o, was ? was : "", json_string_value(here))) json_decref(here);
        else json_object_set_new(changes, o->name, json_pack("[s,o]", was ? was : "", here));
    }
    text_free(&value);
    return changes;
}

/* Takes over the options that a resumed run may change. An option that is left out keeps its value. */
static inline void resume_update(const Option *table, json_t *before) {
    TextBuffer value = {0};
    for (const Option *o = table; o->kind != OPT_END; o++) {
        if (o->kind == OPT_GROUP || resume_place(o->name) || resume_origin(o->name)) continue;
        option_value(o, &value);
        if (value.length) json_object_set_new(before, o->name, json_utf8(value.text, value.length));
    }
    text_free(&value);
}

/* Writes the changes as a list: "--seed 42 (here 7), --beta 0.1 (here 0.2)". */
static inline const char *resume_text(json_t *changes, TextBuffer *out) {
    const char *name, *comma = "";
    json_t *values;
    text_clear(out);
    json_object_foreach(changes, name, values) {
        const char *before = json_string_value(json_array_get(values, 0));
        const char *here = json_string_value(json_array_get(values, 1));
        text_format(out, "%s--%s %s (here %s)", comma, name, *before ? before : "not given",
                    *here ? here : "not given");
        comma = ", ";
    }
    return out->text;
}

#endif
