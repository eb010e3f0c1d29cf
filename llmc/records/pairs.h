/* pairs.h - a prompt with a chosen and a rejected completion, as train_dpo takes them from shards (rankings.h) and makes
 * them of samples (online_pairs.h). */
#ifndef LLMC_RECORDS_PAIRS_H
#define LLMC_RECORDS_PAIRS_H

#include <stdint.h>

typedef struct Pair {
    const int32_t *prompt, *chosen, *rejected; /* tokens, owned by the data that the pair is from */
    int32_t prompt_len, chosen_len, rejected_len;
    /* 1: the token is a target, 0: it is context; NULL: all are targets */
    const uint8_t *chosen_mask, *rejected_mask;
} Pair;

#endif
