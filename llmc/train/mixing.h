/* mixing.h - the options that mix training data, and the mixture of a run.
 *
 *     static struct { OptionList input; MixingOptions mix; } o = {.mix = {.temperature = 2}};
 *     static const Option options[] = {MIXING_OPTIONS(o.mix), OPTION_END};
 *     mixing_check(&o.mix, &o.input, options, steps);                                   // after options_parse()
 *     Inputs files = mixing_inputs(&o.mix, &o.input);
 *     const int64_t records[] = {120, 40};                                              // of each file
 *     Mix m = mixing_open(&trainer, &o.mix, &files, records);                           // before trainer_announce()
 *     mixing_begin(&m, &trainer);                                                       // after it
 *     const int64_t record = mix_next(&m);
 *     mixing_log(&m, &trainer.metrics);                                                 // mix/NAME/share, mix/NAME/epoch
 */
#ifndef LLMC_TRAIN_MIXING_H
#define LLMC_TRAIN_MIXING_H

#include "../base/error.h"       /* die, usage_error, Error, xcalloc */
#include "../base/options.h"     /* option_given, OPTION_CHOICE, OptionList, OPTION_FLAG, ... */
#include "../base/text.h"        /* text_format, TextBuffer, text_clear, text_free */
#include "../records/inputs.h"   /* Inputs, AMOUNT_NONE, inputs_check, inputs_open, ... */
#include "../records/labelled.h" /* Labelled, labelled_files */
#include "../records/mix.h"      /* Mix, MixConfig, MIX_CHOICES, MIX_STEPS, ... */
#include "../report/metrics.h"   /* Metrics, metrics_set, metrics_line, metrics_warn */
#include "trainer.h"             /* Trainer */

typedef struct MixingOptions {
    const char *file;
    int mixing, stop; /* MixKind, MixStop */
    double temperature;
    bool random;
} MixingOptions;

static inline MixingOptions mixing_defaults(void) { return (MixingOptions){.temperature = 2}; }

// clang-format off
#define MIXING_OPTIONS(o)                                                                                              \
    OPTION_TEXT  ("mix",                0, &(o).file,        "FILE",                                                   \
                  "list of shards to mix, one a line: path, weight, cap, epochs; as -i path:weight"),                  \
    OPTION_CHOICE("mixing",             0, &(o).mixing,      MIX_CHOICES,                                          \
                  "what sets the shares of several shards (default: weights; if none has one, their records)"),        \
    OPTION_REAL  ("mixing-temperature", 0, &(o).temperature, 0.001, 1e6,                                               \
                  "temperature: shares are the records to the power 1 / X; 1 is proportional"),                        \
    OPTION_FLAG  ("mix-random",         0, &(o).random,                                                                \
                  "draw the shard of each record at random, not by the largest deficit"),                              \
    OPTION_CHOICE("stopping-strategy",  0, &(o).stop,        MIX_STOP_CHOICES,                                     \
                  "a pass over a mixture ends after as many records as all shards have, with the first shard or with "     \
                  "the last")
// clang-format on

/* Ends the program if there is neither -i nor --mix, or if an option has no effect. list: of -i; steps: --max-steps, or
 * 0. */
static inline void mixing_check(const MixingOptions *o, const OptionList *list, const Option *table, int64_t steps) {
    if (!list->count && !o->file) usage_error("-i/--input is required");
    const OptionUse use[] = {
        {&o->temperature, o->mixing == MIX_TEMPERATURE, "used only with --mixing temperature"},
        {&o->stop, !steps || o->stop == MIX_STEPS, "--max-steps sets the length of the run; give only one of them"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
}

/* Whether the files are mixed, and not one set of records. */
static inline bool mixing_mixes(const MixingOptions *o, const Inputs *in) {
    bool mixes = o->file || o->random || option_given(&o->mixing) || option_given(&o->stop);
    for (int i = 0; i < in->count; i++) mixes = mixes || in->amount[i].kind != AMOUNT_NONE;
    return mixes;
}

static inline MixConfig mixing_config(const MixingOptions *o, const Inputs *in) {
    return (MixConfig){.plain = !mixing_mixes(o, in),
                       .mixing = (MixKind)o->mixing,
                       .stop = (MixStop)o->stop,
                       .temperature = o->temperature,
                       .random = o->random};
}

/* The files of -i and --mix. Ends the program if one is named twice, or if their amounts contradict the options. */
static inline Inputs mixing_inputs(const MixingOptions *o, const OptionList *list) {
    Error e;
    Inputs in;
    if (!inputs_open(&in, "-i/--input", list, &e)) usage_error("%s", e.text);
    if (o->file && (!inputs_read(&in, "--mix", o->file, &e) || !inputs_check(&in, "--mix", &e))) die("%s", e.text);
    if (in.count == 1 && (option_given(&o->mixing) || o->random || option_given(&o->stop)))
        usage_error("--mixing, --mix-random, --stopping-strategy: there is only one shard, %s; give -i several times",
                    in.path[0]);
    for (int i = 0; i < in.count && !mixing_mixes(o, &in); i++)
        if (in.label[i])
            usage_error("-i/--input %s=%s: a name is for the metrics of a mixture; give a weight, too", in.label[i],
                        in.path[i]);
    const MixConfig how = mixing_config(o, &in);
    if (!mix_check(&in, &how, &e)) die("%s", e.text);
    return in;
}

/* Makes the mixture, at its beginning. records: (files) those of each file that are left. Ends the program if the amounts
 * contradict one another. Call it before trainer_announce(), to fail early. */
static inline Mix mixing_open(const Trainer *t, const MixingOptions *o, const Inputs *files, const int64_t *records) {
    Error e;
    Mix m;
    const MixConfig how = mixing_config(o, files);
    if (!mix_new(&m, files, records, &how, (uint64_t)t->o->seed, &e)) die("%s", e.text);
    return m;
}

/* The same for the records of a labelled shard. */
static inline Mix mixing_open_labelled(const Trainer *t, const MixingOptions *o, const Inputs *files,
                                       const Labelled *l) {
    int64_t *records = (int64_t *)xcalloc((size_t)files->count, sizeof *records);
    labelled_files(l, records);
    const Mix m = mixing_open(t, o, files, records);
    free(records);
    return m;
}

/* Writes a line about the shares. */
static inline void mixing_say(const Mix *m, Metrics *metrics) {
    TextBuffer text = {0};
    for (int k = 0; k < m->count; k++)
        text_format(&text, "%s%s %.4g %% of %lld records", k ? ", " : "", m->file[k].name, 100 * m->file[k].share,
                    (long long)m->file[k].rows);
    metrics_line(metrics, "mixture %s; a pass has %lld records", text.text, (long long)m->length);
    text_free(&text);
}

/* Moves to the position of the trainer's state, and writes a line about the shares of a mixture. Ends the program if the
 * state was made with another mixture. Call it after trainer_announce(), which compares the options. */
static inline void mixing_begin(Mix *m, Trainer *t) {
    Error e;
    if (!mix_resume(m, t->state, &e)) die("%s: %s", t->o->resume, e.text);
    if (!m->how.plain) mixing_say(m, &t->metrics);
}

/* Ends the program unless the files' maximum numbers of epochs are `enough` for --max-steps. */
static inline void mixing_check_limit(const Mix *m, bool enough) {
    if (!enough)
        die("--max-steps: the run would take more than the %lld records that the epochs in the list of --mix allow; raise "
            "them, or lower --max-steps",
            (long long)m->limit);
}

/* The records that a run takes; steps: --max-steps or 0, each of `batch` records. */
static inline int64_t mixing_records(const Mix *m, double epochs, int64_t steps, int64_t batch) {
    mixing_check_limit(m, steps <= m->limit / batch);
    return steps ? INT64_MAX : (int64_t)ceil(mix_records(m, epochs));
}

/* Sets the metrics of each file: its share of the records drawn so far, and the passes over it. Says once if more records
 * were drawn than the files' maximum numbers of epochs allow, which happens where sampled groups are replaced. */
static inline void mixing_log(Mix *m, Metrics *metrics) {
    TextBuffer key = {0};
    if (m->limit != INT64_MAX && m->taken > m->limit && !m->exceeded) {
        m->exceeded = true;
        metrics_warn(metrics,
                     "more than the %lld records were drawn that the epochs in the list of --mix allow, because groups "
                     "without a gradient are replaced; the epochs begin again",
                     (long long)m->limit);
    }
    for (int k = 0; k < m->count && !m->how.plain; k++) {
        text_clear(&key);
        text_format(&key, "mix/%s/share", m->file[k].name);
        metrics_set(metrics, key.text, mix_file_share(m, k));
        text_clear(&key);
        text_format(&key, "mix/%s/epoch", m->file[k].name);
        metrics_set(metrics, key.text, mix_file_epochs(m, k));
    }
    text_free(&key);
}

#endif
