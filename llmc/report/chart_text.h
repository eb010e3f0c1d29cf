/* chart_text.h - numbers as the short text of charts and tables.
 *
 *     char text[32];
 *     chart_value(0.6931, false, text);      // "0.693"
 *     chart_tick(15000, 5000, false, text);  // "15k"
 */
#ifndef LLMC_REPORT_CHART_TEXT_H
#define LLMC_REPORT_CHART_TEXT_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Formats a number with at most four digits: 12.3k, 4.56M, 1.2e-5; a share as 87.5%. text holds at least 32 bytes. */
static inline void chart_value(double v, bool share, char *text) {
    const double a = fabs(share ? v *= 100 : v);
    char exponent[32];
    if (!isfinite(v)) strcpy(text, "\xE2\x80\x93"); /* an en dash */
    else if (a == 0) strcpy(text, share ? "0%" : "0");
    else if (share && a < 5e-4)
        strcpy(text, "\xE2\x89\x88"
                     "0%");
    else if (share) snprintf(text, 32, "%.*f%%", a >= 99.95 ? 0 : a >= 0.95 ? 1 : a >= 0.01 ? 2 : 3, v);
    else if (a >= 1e15 || a < 1e-3) {
        snprintf(exponent, sizeof exponent, "%.2e", v); /* 1.20e-05 -> 1.2e-5 */
        char *e = strchr(exponent, 'e'), *digits = e;
        while (digits[-1] == '0') digits--;
        if (digits[-1] == '.') digits--;
        snprintf(text, 32, "%.*se%d", (int)(digits - exponent), exponent, atoi(e + 1));
    } else if (a >= 9999.5) {
        const char *unit = "kMGT";
        double scaled = v / 1e3;
        while (fabs(scaled) >= 999.5 && unit[1]) {
            scaled /= 1e3;
            unit++;
        }
        snprintf(text, 32, "%.*f%c", fabs(scaled) < 9.995 ? 2 : fabs(scaled) < 99.95 ? 1 : 0, scaled, *unit);
    } else if (v == floor(v)) snprintf(text, 32, "%.0f", v);
    else snprintf(text, 32, "%.*f", a >= 1000 ? 0 : a >= 100 ? 1 : a >= 10 ? 2 : a >= 0.1 ? 3 : 4, v);
}

/* Formats a tick's label with the number of decimals that the distance between ticks requires. */
static inline void chart_tick(double v, double tick, bool share, char *text) {
    if (share) {
        v *= 100;
        tick *= 100;
    }
    const double a = fabs(v);
    if (a < tick * 1e-6) strcpy(text, share ? "0%" : "0");
    else if (!share && tick < 9e-5) chart_value(v, false, text);
    else if (!share && a >= 1e4 && a < 1e15) {
        const int power = a >= 1e12 ? 12 : a >= 1e9 ? 9 : a >= 1e6 ? 6 : 3;
        const int decimals = (int)ceil(power - log10(tick) - 1e-9);
        snprintf(text, 32, "%.*f%c",
                 decimals < 0   ? 0
                 : decimals > 5 ? 5
                                : decimals,
                 v / pow(10, power), "kMGT"[power / 3 - 1]);
    } else if (!share && a >= 1e15) chart_value(v, false, text);
    else {
        const int decimals = (int)ceil(-log10(tick) - 1e-9);
        snprintf(text, 32, "%.*f%s", decimals < 0 ? 0 : decimals, v, share ? "%" : "");
    }
}

#endif
