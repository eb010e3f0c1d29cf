/* sandbox_outcome.h - how a program in the sandbox, or a test of one, ended.
 *
 *     puts(sandbox_outcome_name(SANDBOX_TIMEOUT)); // timeout
 */
#ifndef LLMC_SANDBOX_SANDBOX_OUTCOME_H
#define LLMC_SANDBOX_SANDBOX_OUTCOME_H

typedef enum {
    SANDBOX_PASS,
    SANDBOX_WRONG, /* of a test: the result is not the expected one; never that of a run */
    SANDBOX_ERROR,
    SANDBOX_COMPILE,
    SANDBOX_TIMEOUT,
    SANDBOX_MEMORY,
    SANDBOX_OUTPUT_LIMIT,
    SANDBOX_NO_CODE, /* of a completion without a program; never that of a run */
    SANDBOX_FAILED,
    SANDBOX_OUTCOMES
} SandboxOutcome;

static inline const char *sandbox_outcome_name(SandboxOutcome outcome) {
    static const char *const names[SANDBOX_OUTCOMES] = {"pass",   "wrong",        "error",   "compile", "timeout",
                                                        "memory", "output_limit", "no_code", "sandbox"};
    return names[outcome];
}

#endif
