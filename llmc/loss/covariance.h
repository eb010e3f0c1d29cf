/* covariance.h - the tokens of an optimizer step that Clip-Cov and KL-Cov treat in another way (Cui et al. 2025, "The Entropy
 * Mechanism of Reinforcement Learning for Reasoning Language Models", 2505.22617).
 *
 * The entropy of a policy falls by the covariance of the log-probabilities of its actions with their advantages,
 * and a few tokens hold most of it:
 *
 *   cov_t      (A_t - mean A) (log pi_t - mean log pi)
 *   clip_cov   among the tokens with low < cov_t < high that grpo's clip has not removed, max(1, ratio N)
 *              are drawn at random; they lose their gradient
 *   kl_cov     the max(1, ratio N) tokens with the largest cov_t have a KL penalty
 *
 * N is the number of tokens. The formulas and their defaults are those of verl (core_algos.py). verl takes means and chooses in
 * each micro-batch; here, both are over all tokens of the optimizer step, so that the choice does not depend on how the step is
 * divided among micro-batches and ranks. The draw is by a random number of each token (random.h), of which the smallest are
 * taken: neither the order of the completions nor a token that joins or leaves the candidates changes it for the others.
 *
 *     PolicyLossConfig c = policy_loss_config(POLICY_CLIP_COV);
 *     PolicyBatch b;                                                     // the whole optimizer step, of 512 tokens
 *     uint64_t id[16];                                                   // of its 16 completions
 *     uint8_t chosen[512];
 *     CovarianceStats s = covariance_choose(&c, &b, id, seed, 7, chosen);
 *     b.chosen = chosen;                                                 // for policy_loss()
 */
#ifndef LLMC_LOSS_COVARIANCE_H
#define LLMC_LOSS_COVARIANCE_H

#include "../base/error.h"  /* xmalloc */
#include "../base/random.h" /* RANDOM_COVARIANCE, random_bits */
#include "policy.h"         /* PolicyBatch, POLICY_KL_COV, PolicyLossConfig, policy_token_advantage, ... */
#include "scalar.h"         /* clamp */

typedef struct CovarianceStats {
    double mean;            /* of cov_t over the tokens; NaN if there are none */
    int64_t chosen, tokens; /* tokens: those that count and are kept */
} CovarianceStats;

/* A token with its rank among the candidates: smaller ones are chosen first. */
typedef struct CovarianceToken {
    int32_t token;
    double covariance; /* of kl_cov; 0 for clip_cov */
    uint64_t draw;
} CovarianceToken;

/* Larger covariances first, then smaller draws, then earlier tokens. */
static inline int covariance_compare(const void *a, const void *b) {
    const CovarianceToken *x = (const CovarianceToken *)a, *y = (const CovarianceToken *)b;
    if (x->covariance > y->covariance || x->covariance < y->covariance) return x->covariance > y->covariance ? -1 : 1;
    if (x->draw != y->draw) return x->draw < y->draw ? -1 : 1;
    return x->token - y->token;
}

/* Whether grpo's clip removes the gradient of a token: the clipped loss is strictly larger. */
static inline bool covariance_is_clipped(const PolicyLossConfig *c, const PolicyBatch *b, int32_t t, double A) {
    const double rho = exp(policy_log_ratio(b, t));
    return -A * clamp(rho, 1 - c->epsilon, 1 + c->epsilon_high) > -A * rho;
}

/* Whether completion i counts, and whether its token t is in the policy loss. */
static inline bool covariance_counts(const PolicyBatch *b, int32_t i) { return !b->counts || b->counts[i]; }
static inline bool covariance_keeps(const PolicyBatch *b, int32_t t) { return !b->keep || b->keep[t]; }

/* Chooses tokens of the optimizer step that b describes, for loss clip_cov or kl_cov. b: logp, advantages and, if rho is
 * not 1, old_logp of all its tokens; offsets need not begin at 0. id: (completions) their sequence ids. chosen: written for
 * tokens [offset[0], offset[completions]), 0 or 1. A NaN is not chosen. */
static inline CovarianceStats covariance_choose(const PolicyLossConfig *c, const PolicyBatch *b, const uint64_t *id,
                                                uint64_t seed, uint64_t step, uint8_t *chosen) {
    const int32_t first = b->offset[0], count = b->offset[b->completions] - first;
    CovarianceToken *token = (CovarianceToken *)xmalloc(((size_t)count + 1) * sizeof *token);
    CovarianceStats s = {0};
    double A_sum = 0, logp_sum = 0;
    int64_t candidates = 0;
    memset(chosen + first, 0, (size_t)count);
    for (int32_t i = 0; i < b->completions; i++)
        for (int32_t t = b->offset[i]; t < b->offset[i + 1] && covariance_counts(b, i); t++)
            if (covariance_keeps(b, t)) {
                A_sum += policy_token_advantage(b, i, t);
                logp_sum += b->logp[t];
                s.tokens++;
            }
    const double A_mean = A_sum / (double)s.tokens, logp_mean = logp_sum / (double)s.tokens;
    for (int32_t i = 0; i < b->completions; i++)
        for (int32_t t = b->offset[i]; t < b->offset[i + 1] && covariance_counts(b, i); t++) {
            if (!covariance_keeps(b, t)) continue;
            const double A = policy_token_advantage(b, i, t), covariance = (A - A_mean) * (b->logp[t] - logp_mean);
            s.mean += covariance / (double)s.tokens;
            const bool candidate = c->loss == POLICY_KL_COV
                                       ? !isnan(covariance)
                                       : covariance > c->shape.clip_cov_low && covariance < c->shape.clip_cov_high &&
                                             !covariance_is_clipped(c, b, t, A);
            if (!candidate) continue;
            token[candidates++] = (CovarianceToken){
                .token = t,
                .covariance = c->loss == POLICY_KL_COV ? covariance : 0,
                .draw = random_bits(seed, RANDOM_COVARIANCE + id[i], step << 32 | (uint64_t)(t - b->offset[i]))};
        }
    if (!s.tokens) s.mean = NAN;
    qsort(token, (size_t)candidates, sizeof *token, covariance_compare);
    s.chosen =
        (int64_t)((c->loss == POLICY_CLIP_COV ? c->shape.clip_cov_ratio : c->shape.kl_cov_ratio) * (double)s.tokens);
    s.chosen = s.chosen < 1 ? 1 : s.chosen;
    s.chosen = s.chosen < candidates ? s.chosen : candidates;
    for (int64_t k = 0; k < s.chosen; k++) chosen[token[k].token] = 1;
    free(token);
    return s;
}

#endif
