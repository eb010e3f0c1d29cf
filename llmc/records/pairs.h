/* pairs.h - a prompt with a chosen and a rejected completion, and for TPO a gold answer, as train_dpo takes them from
 * shards (ranked.h) and makes them of samples (online_pairs.h). */
#ifndef LLMC_RECORDS_PAIRS_H
#define LLMC_RECORDS_PAIRS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Pair {
    const int32_t *prompt, *chosen, *rejected; /* tokens, owned by the data that the pair is from */
    const int32_t *gold;                       /* a third completion, or NULL */
    int32_t prompt_len, chosen_len, rejected_len, gold_len;
    /* 1: the token is a target, 0: it is context; NULL: all are targets */
    const uint8_t *chosen_mask, *rejected_mask;
} Pair;

/* The number of rows that a pair takes in a batch. shared: its completions share one copy of the prompt. */
static inline int64_t pair_rows(const Pair *p, bool shared) {
    const int32_t copies = shared ? 1 : 1 + (p->rejected_len > 0) + (p->gold_len > 0);
    return (int64_t)copies * p->prompt_len + p->chosen_len + p->rejected_len + p->gold_len;
}

/* Tokens of the longest completion. */
static inline int32_t pair_longest(const Pair *p) {
    const int32_t longer = p->chosen_len > p->rejected_len ? p->chosen_len : p->rejected_len;
    return longer > p->gold_len ? longer : p->gold_len;
}

#endif
