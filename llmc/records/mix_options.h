/* mix_options.h - the options that describe a mixture (mix.h), of the trainers and of make_shard.
 *
 *     static struct { OptionList input; MixingOptions mix; } o = {.mix = {.temperature = 2}};
 *     static const Option options[] = {MIXING_OPTIONS(o.mix), OPTION_END};
 *     Inputs files;
 *     if (!mix_options_inputs(&files, &o.mix, &o.input, &e)) usage_error("%s", e.text);  // after options_parse()
 *     const MixConfig how = mix_options_config(&o.mix, &files);
 */
#ifndef LLMC_RECORDS_MIX_OPTIONS_H
#define LLMC_RECORDS_MIX_OPTIONS_H

#include "../base/error.h"   /* error_set, Error */
#include "../base/options.h" /* option_given, OPTION_CHOICE, OPTION_FLAG, OPTION_REAL, ... */
#include "inputs.h"          /* Inputs, AMOUNT_NONE, inputs_check, inputs_close, ... */
#include "mix.h"             /* MixConfig, MIX_CHOICES, MIX_STOP_CHOICES, MixKind, ... */

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
                  "list of files to mix, one a line: path, weight, cap, epochs; as -i path:weight"),                  \
    OPTION_CHOICE("mixing",             0, &(o).mixing,      MIX_CHOICES,                                          \
                  "what sets the shares of several files (default: weights; if none has one, their records)"),        \
    OPTION_REAL  ("mixing-temperature", 0, &(o).temperature, 0.001, 1e6,                                               \
                  "temperature: shares are the records to the power 1 / X; 1 is proportional"),                        \
    OPTION_FLAG  ("mix-random",         0, &(o).random,                                                                \
                  "draw the file of each record at random, not by the largest deficit"),                              \
    OPTION_CHOICE("stopping-strategy",  0, &(o).stop,        MIX_STOP_CHOICES,                                     \
                  "a pass over a mixture ends after as many records as all files have, with the first file or with "     \
                  "the last")
// clang-format on

/* Whether the files are mixed, and not one set of records. */
static inline bool mix_options_mix(const MixingOptions *o, const Inputs *in) {
    bool mixes = o->file || o->random || option_given(&o->mixing) || option_given(&o->stop);
    for (int i = 0; i < in->count; i++) mixes = mixes || in->amount[i].kind != AMOUNT_NONE;
    return mixes;
}

static inline MixConfig mix_options_config(const MixingOptions *o, const Inputs *in) {
    return (MixConfig){.plain = !mix_options_mix(o, in),
                       .mixing = (MixKind)o->mixing,
                       .stop = (MixStop)o->stop,
                       .temperature = o->temperature,
                       .random = o->random};
}

/* Fills in the files of -i and --mix, of which there may be none. Fails if one is named twice, or if their amounts contradict
 * the options; then nothing stays allocated. */
static inline bool mix_options_inputs(Inputs *in, const MixingOptions *o, const OptionList *list, Error *e) {
    if (!inputs_open(in, "-i/--input", list, e)) return false;
    bool ok = !o->file || (inputs_read(in, "--mix", o->file, e) && inputs_check(in, "--mix", e));
    if (ok && in->count == 1 && (option_given(&o->mixing) || o->random || option_given(&o->stop)))
        ok = error_set(e,
                       "--mixing, --mix-random, --stopping-strategy: there is only one file, %s; give -i several times",
                       in->path[0]);
    const bool mixed = ok && mix_options_mix(o, in);
    for (int i = 0; ok && i < in->count && !mixed; i++)
        if (in->label[i])
            ok = error_set(e, "-i/--input %s=%s: a name is for the metrics of a mixture; give a weight, too",
                           in->label[i], in->path[i]);
    const MixConfig how = mix_options_config(o, in);
    ok = ok && (!in->count || mix_check(in, &how, e));
    if (!ok) inputs_close(in);
    return ok;
}

#endif
