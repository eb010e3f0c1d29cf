/* score_lines.c - scores completions by the verifiers: for dev/golden/golden_math.py --table, which compares them with other
 * graders.
 *
 *     echo '{"task":"math","answer":"\\frac12","completion":"It is \\boxed{0.5}."}' | build/score_lines      # prints 1
 *
 * Reads JSON lines with `task`, `answer`, `completion` and, if there are any, `fields` as JSON text; prints a score for each
 * line, or nan if it cannot be scored.
 */
#include "../llmc/base/error.h"           /* die */
#include "../llmc/reward/verify.h"        /* VERIFY_TASKS, rewards_verify */
#include "../llmc/reward/verify_answer.h" /* RewardInput */

int main(void) {
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        json_t *row = json_loads(line, 0, NULL);
        if (!json_is_object(row)) die("standard input: a line is not a JSON object");
        const RewardInput in = {.task = json_string_value(json_object_get(row, "task")),
                                .answer = json_string_value(json_object_get(row, "answer")),
                                .completion = json_string_value(json_object_get(row, "completion")),
                                .fields = json_string_value(json_object_get(row, "fields"))};
        float score;
        if (!rewards_verify(&in, &score)) die("task '%.80s' has no verifier, must be " VERIFY_TASKS, in.task);
        printf("%g\n", (double)score);
        json_decref(row);
    }
    free(line);
    return 0;
}
