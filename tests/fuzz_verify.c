/* fuzz_verify.c - libFuzzer target: verifiers, final answers, reward specifications and a reward program's output
 * lines.
 *
 * The input's first byte selects the task, the second an option of its style. The rest is the completion, the answer
 * and the fields, separated by NULs; the completion is also parsed as a specification. The invariants: a score is from 0
 * to 1 or NaN; two verdicts on one input are equal; a final answer that was found is found again in its own text.
 */
#include "../llmc/base/error.h"            /* Error, xstrndup */
#include "../llmc/reward/reward_command.h" /* reward_command_line, reward_parse */
#include "../llmc/reward/rewards.h"        /* REWARDS_MAX, Rewards, rewards_close, rewards_open, ... */
#include "../llmc/reward/verify.h"         /* rewards_verify, rewards_answer */
#include "../llmc/reward/verify_answer.h"  /* RewardInput */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const char *const tasks[] = {"add", "word",    "countdown", "sort", "brackets", "exact", "regex",
                                        "",    "numeric", "math",      "em",   "choice",   "f1"};
    enum { TASKS = sizeof tasks / sizeof *tasks };
    static const char *const fields[] = {"{\"style\":\"reversed\"}", "{\"style\":\"scratchpad\"}",
                                         "{\"numbers\":[1,2,3,50],\"target\":7}", "{\"open\":\"([{<\"}",
                                         "{\"pattern\":\"^(a|b)*c$\"}"};
    if (n < 2) return 0;
    char *text = xstrndup((const char *)data + 2, n - 2), *end = text + n - 2;
    const char *completion = text, *answer = completion + strlen(completion), *record;
    answer += answer < end;
    record = answer + strlen(answer);
    record += record < end;
    if (!*record) record = fields[data[1] % 5];
    const RewardInput in = {
        .completion = completion, .task = tasks[data[0] % TASKS], .answer = answer, .fields = record};
    float score = -1, again = -1, number;
    if (!rewards_verify(&in, &score) || !rewards_verify(&in, &again)) abort();
    if (isnan(score) ? !isnan(again) : !(score >= 0 && score <= 1) || score != again) abort();

    char first[4096], second[4096];
    const bool found = rewards_answer(&in, first, sizeof first);
    if (found != rewards_answer(&in, second, sizeof second) || (found && strcmp(first, second))) abort();
    /* a number that is correct is its own canonical form */
    if (found && score == 1 && data[0] % TASKS == 8 && !strstr(record, "style")) {
        const RewardInput plain = {.completion = first, .task = "numeric", .answer = answer};
        if (rewards_verify(&plain, &again) && again != 1) abort();
    }
    reward_parse(completion, strlen(completion), &number);

    Rewards r;
    Error e;
    float part[REWARDS_MAX], total;
    const RewardInput one = {.completion = answer, .task = "add", .answer = "1", .tokens = (int32_t)strlen(answer)};
    if (rewards_open(&r, completion, NULL, 1, 1, 50, &e)) {
        rewards_score(&r, &one, 1, part, &total, &e);
        rewards_close(&r);
    }
    size_t length;
    char *line = reward_command_line(&in, &length);
    json_t *parsed = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
    if (!parsed || memchr(line, '\n', length) != line + length - 1) abort();
    json_decref(parsed);
    free(line), free(text);
    return 0;
}
