/* fuzz_reward.c - libFuzzer target: arbitrary bytes as what a reward program writes, in pieces of arbitrary sizes.
 *
 * The first byte is the number of completions, with its high bit set as one group; the second the size of the pieces. The
 * scores must be those of the lines, whatever the pieces: each is parsed again here, by itself.
 */
#include "../llmc/base/error.h"            /* Error, xstrndup */
#include "../llmc/base/text.h"             /* text_append, text_free */
#include "../llmc/reward/reward_command.h" /* RewardBatch, RewardCommand, RewardWorker, reward_worker_take */
#include "fuzz.h"                          /* require, require_error */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n < 2) return 0;
    const int completions = data[0] % 16 + 1;
    const bool group = data[0] & 128;
    const size_t piece = data[1] % 64 + 1;
    int first[17] = {0};
    float scores[16];
    const RewardBatch b = {NULL, first, group ? 1 : completions, scores, 1};
    for (int i = 0; i <= completions; i++) first[i] = group ? i * completions : i;
    RewardWorker w = {.lines = b.lines, .written = b.lines};
    RewardCommand c = {.program = "program", .groups = group, .worker = &w, .workers = 1};
    Error e = {""};
    bool ok = true;
    data += 2;
    n -= 2;
    for (size_t at = 0, size; ok && at < n; at += size) {
        size = n - at < piece ? n - at : piece;
        text_append(&w.answer, (const char *)data + at, size);
        ok = reward_worker_take(&c, 0, &b, &e);
    }
    if (!ok) require_error(&e);
    require(w.read >= 0 && w.read <= b.lines);
    const char *line = (const char *)data;
    for (int i = 0; i < w.read; i++) {
        const char *end = (const char *)memchr(line, '\n', n - (size_t)(line - (const char *)data));
        require(end != NULL);
        char *text = xstrndup(line, (size_t)(end - line));
        const float again = (float)strtod(text, NULL);
        for (int k = 0; k < completions && group; k++) require(isnan(scores[k]) || isfinite(scores[k]));
        require(group || isnan(scores[i]) || (isfinite(scores[i]) && scores[i] == again));
        free(text);
        line = end + 1;
    }
    text_free(&w.answer);
    return 0;
}
