/* fuzz_reward.c - libFuzzer target: arbitrary bytes as what a reward program writes, in pieces of arbitrary sizes.
 *
 * The first byte is the number of completions, the second the size of the pieces. The scores must be those of the lines,
 * whatever the pieces: each is parsed again here, by itself.
 */
#include "../llmc/base/error.h"            /* Error, xstrndup */
#include "../llmc/reward/reward_command.h" /* RewardCommand, reward_command_take */
#include "fuzz.h"                          /* require, require_error */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n < 2) return 0;
    const int completions = data[0] % 16 + 1;
    const size_t piece = data[1] % 64 + 1;
    RewardCommand c = {.program = "program"};
    Error e = {""};
    float scores[16];
    int answers = 0;
    bool ok = true;
    data += 2;
    n -= 2;
    for (size_t at = 0, size; ok && at < n; at += size) {
        size = n - at < piece ? n - at : piece;
        const size_t room = sizeof c.answer - 1 - c.answer_length;
        require(room > 0);
        if (size > room) size = room;
        memcpy(c.answer + c.answer_length, data + at, size);
        c.answer_length += size;
        ok = reward_command_take(&c, scores, 1, &answers, completions, completions, &e);
    }
    if (!ok) require_error(&e);
    require(answers >= 0 && answers <= completions);
    const char *line = (const char *)data;
    for (int i = 0; i < answers; i++) {
        const char *end = (const char *)memchr(line, '\n', n - (size_t)(line - (const char *)data));
        require(end != NULL);
        char *text = xstrndup(line, (size_t)(end - line));
        const float again = (float)strtod(text, NULL);
        require(isnan(scores[i]) || (isfinite(scores[i]) && scores[i] == again));
        free(text);
        line = end + 1;
    }
    return 0;
}
