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

#include "../base/error.h"          /* Error, die, usage_error, xcalloc */
#include "../base/options.h"        /* OptionList, Option, OptionUse, options_refuse_unused */
#include "../base/text.h"           /* text_format, TextBuffer, text_clear, text_free */
#include "../records/inputs.h"      /* Inputs */
#include "../records/labelled.h"    /* Labelled, labelled_files */
#include "../records/mix.h"         /* Mix, MIX_STEPS, MIX_TEMPERATURE, MixConfig, ... */
#include "../records/mix_options.h" /* MixingOptions, mix_options_config, mix_options_inputs */
#include "../report/metrics.h"      /* Metrics, metrics_set, metrics_line, metrics_warn */
#include "trainer.h"                /* Trainer */

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

/* The files of -i and --mix. Ends the program if one is named twice, or if their amounts contradict the options. */
static inline Inputs mixing_inputs(const MixingOptions *o, const OptionList *list) {
    Error e;
    Inputs in;
    if (!mix_options_inputs(&in, o, list, &e)) usage_error("%s", e.text);
    return in;
}

/* Makes the mixture, at its beginning. records: (files) those of each file that are left. Ends the program if the amounts
 * contradict one another. Call it before trainer_announce(), to fail early. */
static inline Mix mixing_open(const Trainer *t, const MixingOptions *o, const Inputs *files, const int64_t *records) {
    Error e;
    Mix m;
    const MixConfig how = mix_options_config(o, files);
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
