/* votes.h - votes of samples on a final answer: the majority, and votes with weights (self-consistency: Wang et al. 2022,
 * 2203.11171; verifiers' weights: Li et al. 2023, DIVERSE, section 3.2).
 *
 * The figures for k samples are estimated from n >= k samples without bias, as the mean over subsets of k of them: over
 * all, if these are at most VOTES_SUBSETS, otherwise over VOTES_DRAWS random ones.
 *
 * A weight is the probability that a reward model gives a sample, or a score that needs no other model:
 *
 *   logprob     exp of the mean log-probability of the sample's tokens (Wang et al. 2022, section 3.1)
 *   certainty   the mean KL(uniform || p) over its tokens, p the model's distribution (self-certainty: Kang et al. 2025,
 *               2502.18581, eq. 8; certainty.h)
 *
 *     char *const answers[] = {"5", "6", "5"};
 *     const double right[] = {1, 0, 1}, weight[] = {0.5, 0.9, 0.3};
 *     const double two = votes_at_k(answers, right, weight, 3, 2);
 */
#ifndef LLMC_ROLLOUT_VOTES_H
#define LLMC_ROLLOUT_VOTES_H

#include "../base/error.h"  /* xcalloc */
#include "../base/random.h" /* Random, random_below, random_start */
#include <string.h>

#define VOTES_WEIGHTS "reward|logprob|certainty"
typedef enum { VOTES_REWARD, VOTES_LOGPROB, VOTES_CERTAINTY } VotesWeight;

enum { VOTES_SUBSETS = 20000, VOTES_DRAWS = 2000 };

/* 1 if the final answer with the most votes is correct, else 0; tied answers are averaged. A missing answer ("") casts
 * no vote; without any vote the result is 0. If samples with the same answer differ in correctness, because the
 * verifier uses more than the answer, their weighted majority decides. answers, right: (k); weight: (k) of the votes,
 * >= 0, or NULL for 1 each. */
static inline double weighted_right(char *const *answers, const double *right, const double *weight, int k) {
    int winners = 0;
    double most = 0, sum = 0;
    for (int i = 0; i < k; i++) {
        int first = i;
        double votes = 0, good = 0;
        if (!answers[i][0]) continue;
        for (int j = 0; j < k; j++)
            if (!strcmp(answers[i], answers[j])) {
                const double w = weight ? weight[j] : 1;
                votes += w;
                good += w * right[j];
                if (j < first) first = j;
            }
        if (first < i || !(votes > 0)) continue; /* already counted, or without weight */
        if (votes > most) {
            most = votes;
            winners = 0;
            sum = 0;
        }
        if (votes == most) {
            winners++;
            sum += good / votes > 0.5;
        }
    }
    return winners ? sum / winners : 0;
}

/* weighted_right() with one vote per sample. */
static inline double majority_right(char *const *answers, const double *right, int k) {
    return weighted_right(answers, right, NULL, k);
}

/* The samples of one prompt, with answers as numbers. */
typedef struct Votes {
    int n, *answer; /* (n) 0: none; equal answers have equal numbers, up to n */
    const double *right, *weight;
    double *votes, *good; /* (n + 1) of each answer; 0 between two calls */
} Votes;

/* weighted_right() of the k samples that are chosen. */
static inline double votes_subset(const Votes *v, const int *chosen, int k) {
    double most = 0, sum = 0;
    int winners = 0;
    for (int i = 0; i < k; i++) {
        const int s = chosen[i], answer = v->answer[s];
        const double w = v->weight ? v->weight[s] : 1;
        v->votes[answer] += w;
        v->good[answer] += w * v->right[s];
    }
    v->votes[0] = 0;
    for (int i = 0; i < k; i++) {
        const int answer = v->answer[chosen[i]];
        const double votes = v->votes[answer], good = v->good[answer];
        v->votes[answer] = v->good[answer] = 0; /* each answer is looked at once */
        if (!(votes > 0) || votes < most) continue;
        if (votes > most) {
            most = votes;
            winners = 0;
            sum = 0;
        }
        winners++;
        sum += good / votes > 0.5;
    }
    return winners ? sum / winners : 0;
}

/* The number of subsets of k of n, at most VOTES_SUBSETS + 1. */
static inline int votes_subsets(int n, int k) {
    double count = 1;
    for (int i = 1; i <= k && count <= VOTES_SUBSETS; i++) count *= (double)(n - k + i) / i;
    return count <= VOTES_SUBSETS ? (int)(count + 0.5) : VOTES_SUBSETS + 1;
}

/* Makes chosen[0..k) the next subset of n in lexicographic order. Returns false after the last one. */
static inline bool votes_next(int *chosen, int n, int k) {
    int i = k - 1;
    while (i >= 0 && chosen[i] == n - k + i) i--;
    if (i < 0) return false;
    chosen[i]++;
    for (i++; i < k; i++) chosen[i] = chosen[i - 1] + 1;
    return true;
}

static inline double votes_all(const Votes *v, int *chosen, int k) {
    double sum = 0, count = 0;
    for (int i = 0; i < k; i++) chosen[i] = i;
    do {
        sum += votes_subset(v, chosen, k);
        count++;
    } while (votes_next(chosen, v->n, k));
    return sum / count;
}

/* The same over random subsets. order: (n), scratch. */
static inline double votes_drawn(const Votes *v, int *order, int k) {
    Random r = random_start((uint64_t)v->n, (uint64_t)k);
    double sum = 0;
    for (int i = 0; i < v->n; i++) order[i] = i;
    for (int draw = 0; draw < VOTES_DRAWS; draw++) {
        for (int i = 0; i < k; i++) {
            const int j = i + (int)random_below(&r, (uint64_t)(v->n - i)), held = order[i];
            order[i] = order[j];
            order[j] = held;
        }
        sum += votes_subset(v, order, k);
    }
    return sum / VOTES_DRAWS;
}

/* The mean of weighted_right() over the subsets of k of the n samples. answers, right, weight: (n). */
static inline double votes_at_k(char *const *answers, const double *right, const double *weight, int n, int k) {
    Votes v = {.n = n, .right = right, .weight = weight};
    int *chosen = (int *)xcalloc((size_t)n + 1, sizeof *chosen);
    v.answer = (int *)xcalloc((size_t)n + 1, sizeof *v.answer);
    v.votes = (double *)xcalloc((size_t)n + 1, sizeof *v.votes);
    v.good = (double *)xcalloc((size_t)n + 1, sizeof *v.good);
    for (int i = 0; i < n; i++) {
        int first = 0;
        if (!answers[i][0]) continue;
        while (strcmp(answers[first], answers[i]) != 0) first++;
        v.answer[i] = first + 1;
    }
    const double mean = votes_subsets(n, k) <= VOTES_SUBSETS ? votes_all(&v, chosen, k) : votes_drawn(&v, chosen, k);
    free(v.answer), free(v.votes), free(v.good), free(chosen);
    return mean;
}

#endif
