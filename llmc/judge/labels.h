/* labels.h - from the log-probabilities of a judge's labels to a probability or a score.
 *
 *   pair, rubric   labels L1, L2:    p = exp(l1) / (exp(l1) + exp(l2))                     Lee et al. 2023 (RLAIF), 2.1
 *                  --rubric-at-once: the same for the labels "k: L1" and "k: L2" of each criterion k
 *   score          labels 1 ... N:   s = sum_n n P(n) / sum_n P(n),  reward (s - 1) / (N - 1)       the same (d-RLAIF), 2.3
 *
 * l is the log-probability of a whole label with the token that ends the judge's turn, so no label is the beginning of
 * another. mass = sum_n exp(l_n) is the probability that the judge answers with a label at all.
 *
 *     double l[2] = {-0.1, -2.4}, p[2];
 *     const double mass = judge_normalise(l, 2, p);         // p[0] = exp(-0.1) / (exp(-0.1) + exp(-2.4))
 */
#ifndef LLMC_JUDGE_LABELS_H
#define LLMC_JUDGE_LABELS_H

#include <math.h>
#include <stdbool.h>

/* Sets p: (n) to the probabilities given that the answer is one of the labels. l: (n). Returns the mass. */
static inline double judge_normalise(const double *l, int n, double *p) {
    double most = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) most = fmax(most, l[i]);
    for (int i = 0; i < n; i++) sum += p[i] = exp(l[i] - most);
    for (int i = 0; i < n; i++) p[i] /= sum;
    return sum * exp(most);
}

/* The value of label probabilities p: (n): the probability of the first of two labels; of a score, its expected value as
 * a number from 0 to 1. */
static inline double judge_value(const double *p, int n, bool score) {
    double mean = 0;
    if (!score) return p[0];
    for (int i = 0; i < n; i++) mean += i * p[i];
    return mean / (n - 1);
}

/* Sums over the questions of a judge, all doubles, so that ranks can add them. */
typedef struct JudgeSums {
    double questions;                        /* asked, answered or not */
    double answered, mass;                   /* answered by label probabilities; the sum of their masses */
    double pairs, bias, consistent;          /* pairs asked in both orders; p + p' - 1; with (p > 0.5) = (p' < 0.5) */
    double too_long, unreadable, unscorable; /* without an answer: did not fit; no label; the record has no rubric */
    double cached, retries;                  /* answers of the cache; requests that were sent again */
    double injected[2], gain[2];             /* completions with sentences of injection.h; what these gained, by set */
} JudgeSums;

/* Counts a pair asked in both orders. p: probability that the first is better; swapped: the same after the swap, for the
 * completion that is then first. Returns the probability with both orders averaged, NaN if either has no answer. */
static inline double judge_both_orders(JudgeSums *s, double p, double swapped) {
    if (isnan(p) || isnan(swapped)) return NAN;
    s->pairs++;
    s->bias += p + swapped - 1;
    s->consistent += (p > 0.5) == (swapped < 0.5);
    return (p + 1 - swapped) / 2;
}

#endif
