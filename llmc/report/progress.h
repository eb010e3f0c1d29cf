/* progress.h - text of the progress line, which metrics.h shows on a terminal.
 *
 *     char line[256];
 *     progress_draw(line, sizeof line, 79, 120, 2000, 1.23, "reward 0.71");
 *     // [=>                  ] 120/2000   6%  1.23 steps/s  25:28 left  reward 0.71
 */
#ifndef LLMC_REPORT_PROGRESS_H
#define LLMC_REPORT_PROGRESS_H

#include "../base/text.h" /* utf8_length */

/* 75 -> "1:15", 3700 -> "1:01:40", 200000 -> "2d 07:33" */
static inline void progress_duration(double seconds, char *text, size_t size) {
    const long long s = seconds < 0 ? 0 : seconds > 1e9 ? 1000000000 : (long long)(seconds + 0.5);
    if (s < 3600) snprintf(text, size, "%lld:%02lld", s / 60, s % 60);
    else if (s < 86400) snprintf(text, size, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(text, size, "%lldd %02lld:%02lld", s / 86400, s / 3600 % 24, s / 60 % 60);
}

/* Formats the progress line in line[size], at most `width` characters wide. rate: steps per second, 0 if not yet known.
 * steps: 0 if the total is unknown. text: the current activity or the latest numbers; may be NULL. */
static inline void progress_draw(char *line, size_t size, int width, int64_t step, int64_t steps, double rate,
                                 const char *text) {
    enum { BAR = 20 };
    char left[32] = "", bar[BAR + 3] = "", count[64], speed[32] = "";
    if (steps > 0) {
        const double part = step >= steps ? 1 : step < 0 ? 0 : (double)step / (double)steps;
        const int full = (int)(part * BAR);
        bar[0] = '[';
        for (int i = 0; i < BAR; i++) bar[1 + i] = i < full ? '=' : i == full ? '>' : ' ';
        bar[BAR + 1] = ']';
        snprintf(count, sizeof count, " %lld/%lld %3d%%", (long long)step, (long long)steps, (int)(100 * part));
        if (rate > 0) {
            progress_duration((double)(steps > step ? steps - step : 0) / rate, left, sizeof left);
            strcat(left, " left");
        }
    } else snprintf(count, sizeof count, "step %lld", (long long)step);
    if (rate >= 1) snprintf(speed, sizeof speed, "  %.*f steps/s", rate < 10 ? 2 : 1, rate);
    else if (rate > 0) snprintf(speed, sizeof speed, "  %.*f s/step", rate > 0.1 ? 2 : 1, 1 / rate);
    snprintf(line, size, "%s%s%s%s%s%s%s", bar, count, speed, left[0] ? "  " : "", left, text && *text ? "  " : "",
             text ? text : "");
    size_t bytes = 0;
    const size_t n = strlen(line);
    for (int column = 0; bytes < n && column < width; column++) { /* truncate at the width, between characters */
        const size_t character = (size_t)utf8_length(line + bytes, n - bytes);
        bytes += character ? character : 1;
    }
    line[bytes] = 0;
}

#endif
