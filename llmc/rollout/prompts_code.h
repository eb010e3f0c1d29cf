/* prompts_code.h - prompts whose completions are programs: whether a shard has them, and what their tests are like.
 *
 *     CodeJudge j;
 *     CodeOptions options = code_defaults();
 *     PromptsCode found = {0};
 *     if (prompts_run(&prompts, NULL)) {
 *         if (!code_judge_open(&j, &options, &e) || !prompts_read_code(&prompts, NULL, &j, &found, &e)) die("%s", e.text);
 *         printf("%lld tests", (long long)found.tests);
 *         prompts_code_free(&found);
 *     }
 */
#ifndef LLMC_ROLLOUT_PROMPTS_CODE_H
#define LLMC_ROLLOUT_PROMPTS_CODE_H

#include "../base/error.h"           /* Error, error_set */
#include "../base/text.h"            /* TextBuffer, text_format */
#include "../reward/code_judge.h"    /* CodeJudge, CodeRow, code_judge_row */
#include "../reward/rewards.h"       /* Rewards, rewards_run */
#include "../reward/verify.h"        /* VERIFY_CODE, verify_kind */
#include "../reward/verify_answer.h" /* RewardInput */
#include "prompts.h"                 /* Prompts, prompts_empty */

/* What the tests of a shard's prompts are like. */
typedef struct PromptsCode {
    int64_t prompts, unusable; /* whose completions are programs; those of them without a test that can be run */
    int64_t tests, weak;
    char *why; /* of the first unusable one: "record 3: ..." */
} PromptsCode;

static inline void prompts_code_free(PromptsCode *c) {
    free(c->why);
    *c = (PromptsCode){0};
}

/* Whether a prompt's completions are programs: for these rewards, or for the verifier of its task if r is NULL. */
static inline bool prompts_runs(const Prompts *p, const Rewards *r, int64_t i) {
    return r ? rewards_run(r, p->what[i].task) : verify_kind(p->what[i].task) == VERIFY_CODE;
}

/* Whether a shard has such prompts. */
static inline bool prompts_run(const Prompts *p, const Rewards *r) {
    for (int64_t i = 0; i < p->count; i++)
        if (prompts_runs(p, r, i)) return true;
    return false;
}

/* Reads the tests of all such prompts, which translates asserts, and counts them. Fails if no prompt has a test that can be
 * run, or if the sandbox fails. */
static inline bool prompts_read_code(const Prompts *p, const Rewards *r, CodeJudge *j, PromptsCode *c, Error *e) {
    *c = (PromptsCode){0};
    for (int64_t i = 0; i < p->count; i++) {
        if (!prompts_runs(p, r, i)) continue;
        const RewardInput in = prompts_empty(p, i);
        const CodeRow *row = code_judge_row(j, &in, e);
        if (!row) return false;
        c->prompts++;
        c->unusable += row->why != NULL;
        c->tests += row->why ? 0 : (int64_t)json_array_size(row->tests);
        c->weak += row->why ? 0 : row->weak;
        if (!row->why || c->why) continue;
        TextBuffer text = {0};
        text_format(&text, "record %lld: %.400s", (long long)i, row->why);
        c->why = text.text;
    }
    if (!c->prompts || c->unusable < c->prompts) return true;
    error_set(e, "%s: no completion can be scored: %s", p->shard.name, c->why);
    prompts_code_free(c);
    return false;
}

#endif
