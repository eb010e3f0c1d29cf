/* report_controls.h - the controls of a page's charts: what x is, a logarithmic y axis, a range of x.
 *
 * The page has them hidden; its script (report.js, compare.js) shows them and draws the charts again. Without the script
 * the charts are by step.
 *
 *     report_controls(f, false);
 *     report_axes(f, &history);      // tokens and times of the steps
 */
#ifndef LLMC_REPORT_REPORT_CONTROLS_H
#define LLMC_REPORT_REPORT_CONTROLS_H

#include "history.h" /* History, Series, history_began, history_find, ... */

enum { AXES_MOST = 400 }; /* steps whose tokens and time are in the page; the script interpolates between them */

/* Writes the controls. range: with fields for a range of x. */
static inline void report_controls(FILE *f, bool range) {
    fputs("<form id='controls' hidden><fieldset><legend>x axis</legend>"
          "<label><input type='radio' name='x' value='step' checked> step</label>"
          "<label><input type='radio' name='x' value='tokens'> tokens</label>"
          "<label><input type='radio' name='x' value='time'> seconds</label></fieldset>"
          "<fieldset><legend>y axis</legend><label><input type='checkbox' name='log'> logarithmic</label></fieldset>",
          f);
    if (range)
        fputs("<fieldset><legend>range of x</legend><label>from <input type='number' name='from' step='any'></label>"
              "<label>to <input type='number' name='to' step='any'></label>"
              "<button type='reset'>everything</button></fieldset>"
              "<p class='note'>Or drag over a chart to select a range; a double click or Escape shows everything.</p>",
              f);
    fputs("</form>\n", f);
}

/* Writes {"step":[...],"tokens":[...],"time":[...]}, the tokens and the seconds since the beginning at some steps, for the
 * script; null where there is none. */
static inline void report_axes(FILE *f, const History *h) {
    static const char *const names[] = {"step", "tokens", "time"};
    const Series *tokens = history_find(h, "num_tokens"), *times = &h->times;
    const size_t n = times->count < AXES_MOST ? times->count : AXES_MOST;
    fputs("<script type='application/json' id='axes'>{", f);
    for (int part = 0; part < 3; part++) {
        fprintf(f, "%s\"%s\":[", part ? "," : "", names[part]);
        for (size_t k = 0; k < n; k++) {
            const size_t i = n > 1 ? k * (times->count - 1) / (n - 1) : 0;
            const int64_t step = times->steps[i];
            const double value[] = {(double)step, series_at(tokens, step), times->values[i] - history_began(h)};
            if (k) fputc(',', f);
            if (isfinite(value[part])) fprintf(f, "%.10g", value[part]);
            else fputs("null", f);
        }
        fputc(']', f);
    }
    fputs("}</script>\n", f);
}

#endif
