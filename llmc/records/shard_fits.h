/* shard_fits.h - what a shard says about its tokens, for model_fits() of model/model_fits.h.
 *
 *     const FitSide policy = fit_model("the model", &model.config, &file), data = fit_shard(&shard);
 *     Error note = {0};
 *     if (!model_fits(&policy, &data, 0, &note, &e)) die("%s", e.text);
 */
#ifndef LLMC_RECORDS_SHARD_FITS_H
#define LLMC_RECORDS_SHARD_FITS_H

#include "../model/model_fits.h" /* FitSide */
#include "shard.h"               /* Shard */

static inline FitSide fit_shard(const Shard *s) {
    return (FitSide){.name = s->name,
                     .shard = true,
                     .vocab = s->vocab,
                     .tokenizer = s->tokenizer_bytes ? s->tokenizer : NULL,
                     .tokenizer_bytes = s->tokenizer_bytes,
                     .chat_template = s->chat_template[0] ? s->chat_template : NULL};
}

#endif
