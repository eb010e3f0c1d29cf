/* code_reward.h - what the tests of a program said, and the reward that this is. It needs no sandbox: code_judge.h runs the
 * programs, and rewards.h reaches it through a CodeScorer.
 *
 *     const CodeVerdict v = {.outcome = SANDBOX_WRONG, .passed = 3, .tests = 4, .run = 4};
 *     printf("%g\n", code_reward(&v, CODE_REWARD_FRACTION, 0)); // 0.75
 */
#ifndef LLMC_REWARD_CODE_REWARD_H
#define LLMC_REWARD_CODE_REWARD_H

#include "../base/error.h"              /* Error */
#include "../sandbox/sandbox_outcome.h" /* SANDBOX_PASS, SandboxOutcome */
#include "verify_answer.h"              /* RewardInput */
#include <math.h>

typedef struct CodeVerdict {
    SandboxOutcome outcome;
    bool unscorable;        /* the record has no test that can be run, or the sandbox failed */
    int passed, tests, run; /* tests that passed, that the record has, that were run */
    double seconds;
} CodeVerdict;

/* Runs the tests of n completions. stop: the first test that does not pass ends a completion, and `passed` counts those
 * before it. Fails only if the sandbox failed while it translated the tests. */
typedef struct CodeScorer {
    bool (*score)(struct CodeScorer *scorer, const RewardInput *in, int n, bool stop, CodeVerdict *out, Error *e);
} CodeScorer;

/* How tests become a reward: 1 if all pass; the share that passes; 1 if that share is at least a threshold. */
typedef enum { CODE_REWARD_ALL, CODE_REWARD_FRACTION, CODE_REWARD_THRESHOLD } CodeReward;

/* The reward of a verdict; NaN if the completion could not be scored. */
static inline float code_reward(const CodeVerdict *v, CodeReward how, double threshold) {
    if (v->unscorable || !v->tests) return NAN;
    const double share = (double)v->passed / v->tests;
    if (how == CODE_REWARD_FRACTION) return (float)share;
    if (how == CODE_REWARD_THRESHOLD) return share >= threshold;
    return v->outcome == SANDBOX_PASS;
}

#endif
