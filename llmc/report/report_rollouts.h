/* report_rollouts.h - the section of a run's page that shows its rollouts (rollouts.h), with widgets to try things out.
 *
 *     report_rollouts(f, &history);
 *
 *   the group       a prompt's completions side by side, their advantages by several estimators, tokens in colours
 *   the clip        what a clip removes, from the histograms of the ratios
 *   the penalty     the best policy for each strength of the KL penalty, from the samples before the first step
 *   the samples     the same prompts over the run, proxy and gold reward, and what has become more frequent
 *
 * Without the script (rollouts.js) each has a table. The script's data follow as JSON, in which <, > and & and the line
 * ends of JavaScript are escaped. They have a limit: first the page takes fewer groups of a step, then shorter
 * completions, and says so. The section is omitted if the run has no rollouts.
 */
#ifndef LLMC_REPORT_REPORT_ROLLOUTS_H
#define LLMC_REPORT_REPORT_ROLLOUTS_H

#include "../base/error.h"     /* checked_object */
#include "../base/json_text.h" /* json_finite */
#include "chart_text.h"        /* chart_value */
#include "history.h"           /* history_number, History */
#include "html.h"              /* html_text, html_bytes */
#include "rollouts.h"          /* Rollouts, RolloutLine, rollout_shorten, rollout_text */
#include "style.h"             /* keep: rollouts_js, plot_js */

/* Limits of the data, in bytes of JSON. */
enum {
    ROLLOUTS_GROUPS = 600000,
    ROLLOUTS_FILM = 300000,
    ROLLOUTS_CLIPS = 70000,
    ROLLOUTS_STEPS = 48,
    ROLLOUTS_STATIC = 6
};

/* ---- JSON in a page ---- */

/* Writes a JSON text so that it cannot end the element that holds it, whatever its strings have: escapes <, > and &, the
 * line ends of JavaScript, U+2028 and U+2029, and the marks that turn the direction of the text. */
static inline void html_json(FILE *f, const char *json) {
    for (const char *c = json; *c; c++) {
        const unsigned char *u = (const unsigned char *)c;
        const bool first = u[0] == 0xE2 && u[1] == 0x80 && u[2] >= 0xA8 && u[2] <= 0xAE;  /* U+2028 to U+202E */
        const bool second = u[0] == 0xE2 && u[1] == 0x81 && u[2] >= 0xA6 && u[2] <= 0xA9; /* U+2066 to U+2069 */
        if (first || second) {
            fprintf(f, "\\u%04x", 0x2000 + (u[1] - 0x80) * 0x40 + u[2] - 0x80);
            c += 2;
        } else if (*c == '<' || *c == '>' || *c == '&') fprintf(f, "\\u%04x", (unsigned)*c);
        else fputc(*c, f);
    }
}

static inline char *rollouts_dump(const json_t *value) {
    return (char *)checked_object(json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(4)), "a JSON text");
}

static inline size_t rollouts_size(const json_t *value) {
    char *text = rollouts_dump(value);
    const size_t n = strlen(text);
    free(text);
    return n;
}

static inline json_t *rollouts_load(const RolloutLine *line) {
    return (json_t *)checked_object(json_loads(line->text, JSON_ALLOW_NUL, NULL), "a JSON object");
}

/* The number of steps with a dump. */
static inline size_t rollouts_steps(const Rollouts *r) {
    size_t steps = 0;
    for (size_t i = 0; i < r->count; i++) steps += !i || r->lines[i].step != r->lines[i - 1].step;
    return steps;
}

/* Of how many steps a page shows one, so that it has at most ROLLOUTS_STEPS. */
static inline size_t rollouts_stride(const Rollouts *r) {
    return (rollouts_steps(r) + ROLLOUTS_STEPS - 1) / ROLLOUTS_STEPS;
}

/* Whether the page shows the step of line i: the first one and, counted back from the last one, each that is a multiple
 * of the stride. later: the steps after that of the line. */
static inline bool rollouts_shown(const Rollouts *r, size_t i, size_t stride, size_t later) {
    return later % stride == 0 || r->lines[i].step == r->lines[0].step;
}

/* ---- the groups ---- */

/* Adds the groups to a list, at most `most` of each step, with at most `tokens` tokens of a completion. Returns the size
 * of the list, or more than ROLLOUTS_GROUPS as soon as it is larger. */
static inline size_t rollouts_groups(const Rollouts *r, size_t most, size_t tokens, json_t *list) {
    const size_t stride = rollouts_stride(r);
    size_t size = 0, here = 0, later = rollouts_steps(r) - 1;
    json_array_clear(list);
    for (size_t i = 0; i < r->count && size <= ROLLOUTS_GROUPS; i++) {
        const bool next = i && r->lines[i].step != r->lines[i - 1].step;
        later -= next;
        if (next) here = 0;
        if (r->lines[i].clip || !rollouts_shown(r, i, stride, later) || ++here > most) continue;
        json_t *group = rollouts_load(&r->lines[i]);
        rollout_shorten(group, 16, tokens);
        size += rollouts_size(group) + 1;
        json_array_append_new(list, group);
    }
    return size;
}

/* The groups that fit; *left_out: some are left out or shortened. The caller owns the list. */
static inline json_t *rollouts_page_groups(const Rollouts *r, size_t *most, size_t *tokens) {
    json_t *list = (json_t *)checked_object(json_array(), "a JSON array");
    for (*most = 8, *tokens = 512; rollouts_groups(r, *most, *tokens, list) > ROLLOUTS_GROUPS;) {
        if (*most > 2) --*most;
        else if (*tokens > 16) *tokens /= 2;
        else {
            json_array_remove(list, json_array_size(list) - 1); /* the last one that does not fit */
            break;
        }
    }
    return list;
}

/* ---- the film ---- */

/* The number of tokens of a completion that the model drew. */
static inline json_int_t rollouts_drawn(const json_t *sample) {
    const json_t *runs = json_object_get(sample, "drawn");
    json_int_t n = 0;
    for (size_t i = 0; i < json_array_size(runs); i += 2) n += json_integer_value(json_array_get(runs, i));
    return runs ? n
                : json_integer_value(json_object_get(sample, "more_tokens")) +
                      (json_int_t)json_array_size(json_object_get(sample, "tokens"));
}

/* The mean of a list's numbers; NaN without one. */
static inline double rollouts_mean(const json_t *list) {
    double total = 0, n = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (!json_is_number(json_array_get(list, i))) continue;
        total += json_number_value(json_array_get(list, i));
        n++;
    }
    return n > 0 ? total / n : NAN;
}

/* A frame: a fixed prompt at one step, with the values of its completions and the texts of the first `texts` ones, each
 * of at most `bytes` bytes. */
static inline json_t *rollouts_frame(const json_t *group, size_t texts, size_t bytes) {
    static const char *const copied[] = {"step", "prompt_id", "prompt", "answer"};
    json_t *frame = json_object(), *text = json_array(), *reward = json_array(), *gold = json_array(),
           *kl = json_array(), *length = json_array(), *entropy = json_array();
    const json_t *samples = json_object_get(group, "samples");
    for (size_t i = 0; i < sizeof copied / sizeof *copied; i++)
        if (json_object_get(group, copied[i])) json_object_set(frame, copied[i], json_object_get(group, copied[i]));
    for (size_t k = 0; k < json_array_size(samples); k++) {
        const json_t *s = json_array_get(samples, k), *words = json_object_get(s, "text");
        if (k < texts) {
            json_array_append_new(text, rollout_text(words, bytes));
        }
        json_array_append_new(reward, json_finite(history_number(json_object_get(s, "reward"))));
        json_array_append_new(gold, json_finite(history_number(json_object_get(s, "gold"))));
        json_array_append_new(kl, json_finite(history_number(json_object_get(s, "kl"))));
        json_array_append_new(length, json_integer(rollouts_drawn(s)));
        json_array_append_new(entropy, json_finite(rollouts_mean(json_object_get(s, "entropy"))));
    }
    json_object_set_new(frame, "text", text);
    json_object_set_new(frame, "reward", reward);
    json_object_set_new(frame, "gold", gold);
    json_object_set_new(frame, "kl", kl);
    json_object_set_new(frame, "length", length);
    json_object_set_new(frame, "entropy", entropy);
    return frame;
}

/* The frames that fit; *texts and *bytes: what is kept of a prompt's completions. The caller owns the list. */
static inline json_t *rollouts_page_film(const Rollouts *r, size_t *texts, size_t *bytes) {
    json_t *list = (json_t *)checked_object(json_array(), "a JSON array");
    const size_t stride = rollouts_stride(r);
    *texts = 16;
    *bytes = 2000;
    for (;;) {
        size_t size = 0;
        json_array_clear(list);
        size_t later = rollouts_steps(r) - 1;
        for (size_t i = 0; i < r->count && size <= ROLLOUTS_FILM; i++) {
            later -= i && r->lines[i].step != r->lines[i - 1].step;
            if (!r->lines[i].fixed || !rollouts_shown(r, i, stride, later)) continue;
            json_t *group = rollouts_load(&r->lines[i]), *frame = rollouts_frame(group, *texts, *bytes);
            size += rollouts_size(frame) + 1;
            json_array_append_new(list, frame);
            json_decref(group);
        }
        if (size <= ROLLOUTS_FILM) break;
        if (*texts > 1) *texts /= 2;
        else if (*bytes > 32) *bytes /= 2;
        else {
            json_array_remove(list, json_array_size(list) - 1);
            break;
        }
    }
    return list;
}

/* ---- the clips ---- */

/* Every n-th histogram, from the last one back, with at most `tokens` single tokens. */
static inline json_t *rollouts_clips(const Rollouts *r, size_t every, size_t tokens) {
    json_t *list = (json_t *)checked_object(json_array(), "a JSON array");
    size_t seen = 0;
    for (size_t i = r->count; i-- > 0;) {
        if (!r->lines[i].clip || seen++ % every) continue;
        json_t *clip = rollouts_load(&r->lines[i]), *single = json_object_get(clip, "tokens");
        while (json_array_size(single) > tokens) json_array_remove(single, json_array_size(single) - 1);
        json_array_insert_new(list, 0, clip);
    }
    return list;
}

static inline json_t *rollouts_page_clips(const Rollouts *r) {
    size_t every = 1, tokens = 24;
    json_t *list = rollouts_clips(r, every, tokens);
    while (rollouts_size(list) > ROLLOUTS_CLIPS) {
        json_decref(list);
        if (tokens > 6) tokens /= 2;
        else every *= 2;
        list = rollouts_clips(r, every, tokens);
        if (every > r->count) break;
    }
    return list;
}

/* ---- what is shown without the script ---- */

/* Writes a text of JSON, which may have NULs, shortened to `most` bytes. */
static inline void rollouts_text(FILE *f, const json_t *text, size_t most) {
    const size_t all = json_string_length(text);
    size_t n = all;
    if (n > most)
        for (n = most; n && ((unsigned char)json_string_value(text)[n] & 0xC0) == 0x80;) n--;
    if (n) html_bytes(f, json_string_value(text), n);
    else if (!all) fputs("<span class='none'>empty</span>", f);
    if (n < all) fprintf(f, "<span class='none'> \xE2\x80\xA6 and %zu bytes more</span>", all - n);
}

static inline void rollouts_cell(FILE *f, double value) {
    char text[32];
    chart_value(value, false, text);
    fprintf(f, "<td>%s</td>", text);
}

/* Writes a completion as a box. */
static inline void rollouts_box(FILE *f, const json_t *sample) {
    const json_t *right = json_object_get(sample, "right");
    const double reward = history_number(json_object_get(sample, "reward")),
                 advantage = history_number(json_object_get(sample, "advantage"));
    char text[32];
    fprintf(f, "<div class='take %s'><div class='got'>%s",
            json_is_boolean(right) ? json_is_true(right) ? "ok" : "bad" : "",
            json_is_boolean(right) ? json_is_true(right) ? "\xE2\x9C\x93 right" : "\xE2\x9C\x97 wrong" : "");
    if (isfinite(reward)) {
        chart_value(reward, false, text);
        fprintf(f, "%sreward %s", json_is_boolean(right) ? ", " : "", text);
    }
    if (isfinite(advantage)) {
        chart_value(advantage, false, text);
        fprintf(f, ", advantage %s", text);
    }
    fputs("</div><pre>", f);
    rollouts_text(f, json_object_get(sample, "text"), 2000);
    fputs("</pre></div>", f);
}

/* Writes the groups of the last step of the list. */
static inline void rollouts_static_groups(FILE *f, const json_t *groups) {
    const size_t n = json_array_size(groups);
    const json_int_t last = json_integer_value(json_object_get(json_array_get(groups, n - 1), "step"));
    size_t shown = 0;
    fprintf(f, "<p class='note'>The groups of step %lld.</p>\n", (long long)last);
    for (size_t i = 0; i < n; i++) {
        const json_t *group = json_array_get(groups, i), *samples = json_object_get(group, "samples");
        if (json_integer_value(json_object_get(group, "step")) != last || shown++ >= ROLLOUTS_STATIC) continue;
        fputs("<article class='prompt'><div class='ask'><span class='n'></span><pre>", f);
        rollouts_text(f, json_object_get(group, "prompt"), 2000);
        fputs("</pre></div><div class='pair'>", f);
        for (size_t k = 0; k < json_array_size(samples) && k < 8; k++) rollouts_box(f, json_array_get(samples, k));
        fputs("</div></article>\n", f);
    }
}

/* Writes the share of each histogram that its own clip removes. */
static inline void rollouts_static_clips(FILE *f, const json_t *clips) {
    fputs(
        "<div class='scroll'><table class='all'><thead><tr><th>step</th><th>loss</th><th>rho below</th><th>rho above</th>"
        "<th>without gradient</th></tr></thead><tbody>\n",
        f);
    for (size_t i = 0; i < json_array_size(clips); i++) {
        const json_t *clip = json_array_get(clips, i);
        char text[32];
        fprintf(f, "<tr><td>%lld</td><td>", (long long)json_integer_value(json_object_get(clip, "step")));
        const char *loss = json_string_value(json_object_get(clip, "loss"));
        html_text(f, loss ? loss : "");
        fputs("</td>", f);
        rollouts_cell(f, exp(history_number(json_object_get(clip, "low"))));
        rollouts_cell(f, exp(history_number(json_object_get(clip, "high"))));
        chart_value(history_number(json_object_get(clip, "share")), true, text);
        fprintf(f, "<td>%s</td></tr>\n", text);
    }
    fputs("</tbody></table></div>\n", f);
}

/* Mean of a list of a frame over all frames of a step. */
static inline double rollouts_frame_mean(const json_t *film, json_int_t step, const char *key) {
    double sum = 0, n = 0;
    for (size_t i = 0; i < json_array_size(film); i++) {
        const json_t *frame = json_array_get(film, i), *values = json_object_get(frame, key);
        if (json_integer_value(json_object_get(frame, "step")) != step) continue;
        for (size_t k = 0; k < json_array_size(values); k++) {
            if (!json_is_number(json_array_get(values, k))) continue;
            sum += json_number_value(json_array_get(values, k));
            n++;
        }
    }
    return n > 0 ? sum / n : NAN;
}

/* Writes the means of the fixed prompts' completions at each step. */
static inline void rollouts_static_film(FILE *f, const json_t *film) {
    static const char *const keys[] = {"reward", "gold", "kl", "length", "entropy"};
    json_int_t last = -1;
    fputs("<div class='scroll'><table class='all'><thead><tr><th>step</th><th>reward</th><th>gold reward</th>"
          "<th>KL, nats per completion</th><th>tokens</th><th>entropy</th></tr></thead><tbody>\n",
          f);
    for (size_t i = 0; i < json_array_size(film); i++) {
        const json_int_t step = json_integer_value(json_object_get(json_array_get(film, i), "step"));
        if (step == last) continue;
        last = step;
        fprintf(f, "<tr><td>%lld</td>", (long long)step);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            rollouts_cell(f, rollouts_frame_mean(film, step, keys[k]));
        fputs("</tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
}

/* The reward and the KL of the best policy on the samples of a frame: see tilt() of rollouts.js. */
typedef struct RolloutTilt {
    double reward, gold, kl, effective;
} RolloutTilt;

/* The optimum of E[r] - beta KL over distributions on n samples of the reference: w_i = exp(r_i / beta) / sum. gold may be
 * NULL. */
static inline RolloutTilt rollout_tilt(const double *reward, const double *gold, size_t n, double beta) {
    RolloutTilt t = {0};
    double top = -INFINITY, sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) top = fmax(top, reward[i]);
    for (size_t i = 0; i < n; i++) sum += exp((reward[i] - top) / beta);
    for (size_t i = 0; i < n; i++) {
        const double w = exp((reward[i] - top) / beta) / sum;
        t.reward += w * reward[i];
        if (gold) t.gold += w * gold[i];
        if (w > 0) t.kl += w * log((double)n * w);
        squares += w * w;
    }
    t.effective = 1 / squares;
    if (!gold) t.gold = NAN;
    return t;
}

/* The mean of rollout_tilt() over the frames before the first step; false if there are none with rewards. */
static inline bool rollouts_tilt(const json_t *film, double beta, RolloutTilt *mean) {
    double frames = 0;
    *mean = (RolloutTilt){0};
    for (size_t i = 0; i < json_array_size(film); i++) {
        const json_t *frame = json_array_get(film, i), *reward = json_object_get(frame, "reward"),
                     *gold = json_object_get(frame, "gold");
        if (json_integer_value(json_object_get(frame, "step")) != 0) continue;
        double r[json_array_size(reward) + 1], g[json_array_size(reward) + 1];
        size_t n = 0;
        bool golden = true;
        for (size_t k = 0; k < json_array_size(reward); k++) {
            if (!json_is_number(json_array_get(reward, k))) continue;
            r[n] = json_number_value(json_array_get(reward, k));
            g[n] = history_number(json_array_get(gold, k));
            golden &= isfinite(g[n++]);
        }
        if (n < 2) continue;
        const RolloutTilt t = rollout_tilt(r, golden ? g : NULL, n, beta);
        mean->reward += t.reward, mean->gold += t.gold, mean->kl += t.kl, mean->effective += t.effective;
        frames++;
    }
    mean->reward /= frames, mean->gold /= frames, mean->kl /= frames, mean->effective /= frames;
    return frames > 0;
}

static inline void rollouts_static_tilt(FILE *f, const json_t *film) {
    static const double betas[] = {10, 3, 1, 0.3, 0.1, 0.03, 0.01};
    RolloutTilt t;
    fputs(
        "<div class='scroll'><table class='all'><thead><tr><th>beta</th><th>reward</th><th>gold reward</th><th>KL</th>"
        "<th>effective samples</th></tr></thead><tbody>\n",
        f);
    for (size_t i = 0; i < sizeof betas / sizeof *betas; i++) {
        if (!rollouts_tilt(film, betas[i], &t)) continue;
        fputs("<tr>", f);
        rollouts_cell(f, betas[i]);
        rollouts_cell(f, t.reward);
        rollouts_cell(f, t.gold);
        rollouts_cell(f, t.kl);
        rollouts_cell(f, t.effective);
        fputs("</tr>\n", f);
    }
    fputs("</tbody></table></div>\n", f);
}

/* ---- the section ---- */

/* Writes the beginning of a widget, whose contents the script replaces. */
static inline void rollouts_widget(FILE *f, const char *name, const char *title, const char *about) {
    fprintf(f, "<h3 id='rollouts-%s'>%s</h3><p class='note'>%s</p>\n<div class='widget' data-widget='%s'>\n", name,
            title, about, name);
}

static inline void rollouts_data(FILE *f, const json_t *data) {
    char *text = rollouts_dump(data);
    fputs("<script type='application/json' id='rollouts-data'>", f);
    html_json(f, text);
    fputs("</script>\n", f);
    free(text);
}

/* Writes what the reader has to know of the data: what was left out, and why the file ends early. */
static inline void rollouts_notes(FILE *f, const History *h, size_t most, size_t tokens, size_t texts, size_t bytes) {
    const Rollouts *r = h->rollouts;
    fputs("<p class='note'>Completions of some steps of the run, token by token.", f);
    if (rollouts_stride(r) > 1)
        fprintf(f, " Of the %zu steps in the file the page has at most %d.", rollouts_steps(r), ROLLOUTS_STEPS + 1);
    if (most < 8) fprintf(f, " To keep the page small, it has at most %zu groups of a step.", most);
    if (tokens < 512) fprintf(f, " Completions are cut after %zu tokens.", tokens);
    if (texts < 16 && bytes)
        fprintf(f, " Of the prompts below it has the texts of %zu completion%s at each step.", texts,
                texts == 1 ? "" : "s");
    if (r->cut) fputs(" The file of the rollouts is cut off: its last line is left out.", f);
    if (h->rollouts_failed) {
        fputs(" The file of the rollouts ends early: ", f);
        html_text(f, h->rollouts_failed);
        fputs(".", f);
    }
    fputs("</p>\n", f);
}

/* Writes the section. */
static inline void report_rollouts(FILE *f, const History *h) {
    const Rollouts *r = h->rollouts;
    size_t most, tokens, texts, bytes;
    RolloutTilt unused;
    if (!r || !r->count) return;
    json_t *groups = rollouts_page_groups(r, &most, &tokens), *film = rollouts_page_film(r, &texts, &bytes),
           *clips = rollouts_page_clips(r);
    fputs("<section id='rollouts'><h2>Rollouts</h2>\n", f);
    rollouts_notes(f, h, most, tokens, json_array_size(film) ? texts : 16, bytes);
    if (json_array_size(groups)) {
        rollouts_widget(f, "group", "A group",
                        "A prompt's completions and the advantages that they have by each estimator. Resample draws "
                        "others from those that are stored.");
        rollouts_static_groups(f, groups);
        fputs("</div>\n", f);
    }
    rollouts_widget(f, "clip", "What the clip removes",
                    "The surrogate of a token as a function of its ratio rho, above the ratios of the step. Tokens "
                    "beyond the clip, on the side to which their advantage pushes them, have no gradient.");
    if (json_array_size(clips)) rollouts_static_clips(f, clips);
    else
        fputs("<p>Each step of this run has samples of its own, so that every rho is 1 and nothing is clipped.</p>\n",
              f);
    fputs("</div>\n", f);
    if (json_array_size(film)) {
        rollouts_widget(f, "film", "The same prompts over the run",
                        "The prompts that were sampled at each of these steps.");
        rollouts_static_film(f, film);
        fputs("</div>\n", f);
    }
    if (rollouts_tilt(film, 1, &unused)) {
        rollouts_widget(
            f, "tilt", "The strength of the KL penalty",
            "For each beta the policy with the highest E[reward] - beta KL among those that only weight the "
            "samples from before the first step: w = exp(reward / beta), normalised. With fewer than five "
            "effective samples the figures say little.");
        rollouts_static_tilt(f, film);
        fputs("</div>\n", f);
    }
    json_t *data = json_pack("{s:o, s:o, s:o}", "groups", groups, "clips", clips, "film", film);
    rollouts_data(f, data);
    json_decref(data);
    fputs("</section>\n", f);
}

#endif
