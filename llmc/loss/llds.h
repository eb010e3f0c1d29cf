/* llds.h - LLDS: keeps the likelihood of good turns from falling (lazy likelihood displacement).
 *
 * In GRPO with tools the likelihood of right answers can fall although their advantage is positive, because wrong ones
 * share their tokens; this ends in collapse. LLDS adds to the loss, with weight c,
 *
 *   1 / N  sum over turns a with A_a >= 0 and sum_(t in a) (log pi_old - log pi) > 0  of  sum_(t in a) max(0, log pi_old - log pi)
 *
 * so it acts only on turns whose likelihood fell, and there only on the tokens that fell. N are the tokens of the whole
 * optimizer step that count. Deng et al. 2025 (2512.04220), with the gate for each action, which the paper finds best.
 *
 *     const int32_t offset[] = {0, 4}, turn[] = {0, 0, 1, 1};                       // a completion of two turns
 *     const float A[] = {0.5f}, before[] = {-1, -1, -2, -1}, now[] = {-1.5f, -1, -1, -2};
 *     const PolicyBatch one = {.completions = 1, .offset = offset, .advantage = A, .logp = now, .old_logp = before};
 *     LldsStats stats = {0};
 *     loss += llds_loss(0.1, 4, &one, turn, dlogp, &stats);                         // the first turn fell by 0.5
 */
#ifndef LLMC_LOSS_LLDS_H
#define LLMC_LOSS_LLDS_H

#include "policy.h" /* PolicyBatch, policy_token_advantage */

/* Totals of a step: doubles only, so that ranks can add them. */
typedef struct LldsStats {
    double turns, active; /* with A >= 0; of them: whose likelihood fell */
    double loss;          /* without the weight */
} LldsStats;

/* Adds the term of tokens [begin, end) of completion i, a turn, to dlogp. Returns it without the weight. */
static inline double llds_turn(double weight, const PolicyBatch *b, int32_t begin, int32_t end, float *dlogp) {
    double fall = 0, sum = 0;
    for (int32_t t = begin; t < end; t++) fall += (double)b->old_logp[t] - b->logp[t];
    if (!(fall > 0)) return 0;
    for (int32_t t = begin; t < end; t++) {
        if (!(b->logp[t] < b->old_logp[t])) continue;
        sum += (double)b->old_logp[t] - b->logp[t];
        dlogp[t] -= (float)weight;
    }
    return sum;
}

/* Adds the term of a micro-batch to dlogp and returns it. tokens: N. turn: the turn of each token, within its completion.
 * b->old_logp must be given. */
static inline double llds_loss(double coef, double tokens, const PolicyBatch *b, const int32_t *turn, float *dlogp,
                               LldsStats *stats) {
    const double weight = coef / fmax(tokens, 1);
    double sum = 0;
    for (int32_t i = 0; i < b->completions; i++)
        for (int32_t begin = b->offset[i], end; begin < b->offset[i + 1]; begin = end) {
            for (end = begin; end < b->offset[i + 1] && turn[end] == turn[begin]; end++) continue;
            if ((b->counts && !b->counts[i]) || policy_token_advantage(b, i, begin) < 0) continue;
            const double own = llds_turn(weight, b, begin, end, dlogp);
            stats->turns++;
            stats->active += own > 0;
            sum += own;
        }
    stats->loss += sum / fmax(tokens, 1);
    return weight * sum;
}

#endif
