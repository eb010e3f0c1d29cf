/* show_rollouts.h - prints the groups of a file of rollouts: completions side by side, or their tokens in a table.
 *
 *     const RolloutView view = {.step = -1, .prompt = -1, .most = 3};
 *     if (!rollouts_print(&rollouts, &view, "rollouts.jsonl", &e)) die("%s", e.text);
 */
#ifndef DATA_SHOW_ROLLOUTS_H
#define DATA_SHOW_ROLLOUTS_H

#include "../llmc/base/error.h"      /* PLURAL, error_set, Error */
#include "../llmc/base/terminal.h"   /* terminal_width */
#include "../llmc/base/text.h"       /* text_format, text_visible, TextBuffer, text_free, ... */
#include "../llmc/report/rollouts.h" /* Rollouts, RolloutLine */

enum { ROLLOUT_COLUMN = 30, ROLLOUT_GAP = 2 };

typedef struct RolloutView {
    int64_t step, prompt; /* -1: the last step; any prompt */
    int64_t start, most;  /* groups to leave out; to print */
    bool tokens, json, color;
} RolloutView;

/* The lines of one completion in its column. */
typedef struct RolloutCell {
    TextBuffer text;
    const char *look; /* escape sequence of the colour, or "" */
    size_t at;        /* what is printed so far */
} RolloutCell;

static inline double rollout_value(const json_t *o, const char *key) {
    const json_t *value = json_object_get(o, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* Appends a number with a name, unless it is NaN. */
static inline void rollout_append(TextBuffer *out, const char *name, double value) {
    if (!isnan(value)) text_format(out, "%s%s %.4g", out->length ? "  " : "", name, value);
}

/* The first line of a completion: its number, whether it is a demonstration, verdict, role, reward, gold reward and
 * advantage. */
static inline void rollout_cell_head(RolloutCell *cell, size_t k, const json_t *sample) {
    const json_t *right = json_object_get(sample, "right");
    text_clear(&cell->text);
    const char *whose = json_is_true(json_object_get(sample, "off_policy")) ? " demonstration" : "";
    text_format(&cell->text, "[%zu]%s%s", k, whose,
                json_is_true(right)    ? " right"
                : json_is_false(right) ? " wrong"
                                       : "");
    const json_t *role = json_object_get(sample, "role");
    if (json_string_length(role)) text_string(&cell->text, " ");
    text_visible(&cell->text, json_string_value(role), json_string_length(role), false);
    rollout_append(&cell->text, "reward", rollout_value(sample, "reward"));
    rollout_append(&cell->text, "gold", rollout_value(sample, "gold"));
    rollout_append(&cell->text, "A", rollout_value(sample, "advantage"));
    text_string(&cell->text, "\n");
}

/* The whole cell: the head, the text, and how the completion ended. */
static inline RolloutCell rollout_cell(size_t k, const json_t *sample, bool color) {
    RolloutCell cell = {.look = ""};
    const json_t *text = json_object_get(sample, "text"), *right = json_object_get(sample, "right");
    const char *stop = json_string_value(json_object_get(sample, "stop"));
    const size_t tokens = json_array_size(json_object_get(sample, "tokens"));
    const double turns = rollout_value(sample, "turns");
    rollout_cell_head(&cell, k, sample);
    text_visible(&cell.text, json_string_value(text), json_string_length(text), true);
    text_format(&cell.text, "\n(%zu token%s", tokens, PLURAL(tokens));
    if (turns > 1) text_format(&cell.text, ", %.0f turns", turns);
    if (stop) {
        text_string(&cell.text, ", ");
        text_visible(&cell.text, stop, strlen(stop), false);
    }
    text_string(&cell.text, ")");
    if (color && right) cell.look = json_is_true(right) ? "\033[32m" : json_is_false(right) ? "\033[31m" : "";
    return cell;
}

/* Prints the next line of a cell, at most `width` columns, and spaces up to there if `fill`. */
static inline void rollout_cell_line(RolloutCell *cell, int width, bool fill) {
    const char *text = cell->text.text + cell->at;
    size_t n = 0;
    int columns = 0;
    while (cell->at + n < cell->text.length && text[n] != '\n') {
        const size_t next = (size_t)utf8_length(text + n, cell->text.length - cell->at - n);
        if (columns == width) break;
        columns++;
        n += next ? next : 1;
    }
    printf("%s%.*s%s", cell->look, (int)n, text, *cell->look ? "\033[0m" : "");
    if (fill) printf("%*s", width - columns + ROLLOUT_GAP, "");
    cell->at += n;
    if (cell->at < cell->text.length && cell->text.text[cell->at] == '\n') cell->at++;
}

/* Prints completions first ... end-1 beside each other. */
static inline void rollout_print_row(const json_t *samples, size_t first, size_t end, int width, bool color) {
    RolloutCell cell[64];
    bool left = true;
    for (size_t i = first; i < end; i++) cell[i - first] = rollout_cell(i, json_array_get(samples, i), color);
    while (left) {
        left = false;
        for (size_t i = 0; i < end - first; i++) rollout_cell_line(&cell[i], width, i + 1 < end - first);
        for (size_t i = 0; i < end - first; i++) left |= cell[i].at < cell[i].text.length;
        putchar('\n');
    }
    for (size_t i = 0; i < end - first; i++) text_free(&cell[i].text);
}

static inline void rollout_print_number(const json_t *array, size_t i) {
    const json_t *value = json_array_get(array, i);
    if (json_is_number(value)) printf(" %9.4g", json_number_value(value));
    else printf(" %9s", "-");
}

/* Prints the tokens of a completion with their values, one to a line. */
static inline void rollout_print_tokens(size_t k, const json_t *sample, bool color) {
    static const char *const keys[] = {"logp", "old_logp", "sampler_logp", "ref_logp", "entropy", "advantage"};
    RolloutCell head = {.look = ""};
    const json_t *tokens = json_object_get(sample, "tokens"), *drawn = json_object_get(sample, "drawn");
    size_t run = 0, left = json_array_size(drawn) ? (size_t)json_integer_value(json_array_get(drawn, 0)) : SIZE_MAX;
    rollout_cell_head(&head, k, sample);
    printf("%s%6s", head.text.text, "");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (json_is_array(json_object_get(sample, keys[i]))) printf(" %9.9s", keys[i]);
    putchar('\n');
    for (size_t t = 0; t < json_array_size(tokens); t++, left--) {
        while (!left && run + 1 < json_array_size(drawn))
            left = (size_t)json_integer_value(json_array_get(drawn, ++run));
        const json_t *token = json_array_get(tokens, t);
        printf("%6zu", t);
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
            if (json_is_array(json_object_get(sample, keys[i])))
                rollout_print_number(json_object_get(sample, keys[i]), t);
        text_clear(&head.text);
        text_visible(&head.text, json_string_value(token), json_string_length(token), false);
        printf(" %s\"%s\"%s%s\n", color && run % 2 ? "\033[2m" : "", head.text.text, color && run % 2 ? "\033[0m" : "",
               run % 2 ? " (observed)" : "");
    }
    text_free(&head.text);
}

/* Mean and standard deviation of the rewards that are numbers. */
static inline void rollout_rewards(const json_t *samples, double *mean, double *deviation) {
    double sum = 0, squares = 0, n = 0;
    for (size_t i = 0; i < json_array_size(samples); i++) {
        const double r = rollout_value(json_array_get(samples, i), "reward");
        if (isnan(r)) continue;
        sum += r;
        squares += r * r;
        n++;
    }
    *mean = n > 0 ? sum / n : NAN;
    *deviation = n > 1 ? sqrt(fmax(squares - sum * sum / n, 0) / (n - 1)) : NAN;
}

static inline void rollout_print_text(const char *name, const json_t *text) {
    TextBuffer out = {0};
    if (!json_string_length(text)) return;
    text_visible(&out, json_string_value(text), json_string_length(text), true);
    printf("%s: %s\n", name, out.text);
    text_free(&out);
}

static inline void rollout_print_group(const json_t *group, const RolloutView *v) {
    const json_t *samples = json_object_get(group, "samples");
    const char *kind = json_string_value(json_object_get(group, "kind"));
    const size_t n = json_array_size(samples);
    const int screen = terminal_width(STDOUT_FILENO), fit = (screen + ROLLOUT_GAP) / (ROLLOUT_COLUMN + ROLLOUT_GAP);
    const size_t beside = fit < 1 ? 1 : fit > 64 ? 64 : (size_t)fit < n ? (size_t)fit : n;
    const int width = (screen + ROLLOUT_GAP) / (int)beside - ROLLOUT_GAP;
    double mean, deviation;
    TextBuffer head = {0};
    rollout_rewards(samples, &mean, &deviation);
    text_format(&head, "-- step %lld, prompt %lld%s: %zu completion%s",
                (long long)json_integer_value(json_object_get(group, "step")),
                (long long)json_integer_value(json_object_get(group, "prompt_id")),
                kind && !strcmp(kind, "fixed")     ? ", sampled at each step shown"
                : kind && !strcmp(kind, "trained") ? ", trained on"
                                                   : "",
                n, PLURAL(n));
    rollout_append(&head, "mean reward", mean);
    rollout_append(&head, "deviation", deviation);
    printf("%s%s%s\n", v->color ? "\033[1m" : "", head.text, v->color ? "\033[0m" : "");
    text_free(&head);
    rollout_print_text("prompt", json_object_get(group, "prompt"));
    rollout_print_text("answer", json_object_get(group, "answer"));
    for (size_t i = 0; v->tokens && i < n; i++) rollout_print_tokens(i, json_array_get(samples, i), v->color);
    for (size_t i = 0; !v->tokens && i < n; i += beside)
        rollout_print_row(samples, i, i + beside < n ? i + beside : n, width, v->color);
    putchar('\n');
}

/* Prints what the file holds: the run, and the steps with the number of groups. */
static inline void rollouts_print_head(const Rollouts *r, const char *path) {
    int64_t last = -1;
    size_t groups = 0;
    for (size_t i = 0; i < r->count; i++) groups += !r->lines[i].clip;
    printf("%s: rollouts of %s, run %s: %zu group%s of steps", path, r->program[0] ? r->program : "a run",
           r->run[0] ? r->run : "unknown", groups, PLURAL(groups));
    for (size_t i = 0; i < r->count; i++) {
        if (r->lines[i].step != last) printf("%s %lld", last < 0 ? "" : ",", (long long)r->lines[i].step);
        last = r->lines[i].step;
    }
    putchar('\n');
}

/* Prints the groups that the view selects; path: a name for messages. */
static inline bool rollouts_print(const Rollouts *r, const RolloutView *v, const char *path, Error *e) {
    int64_t shown = 0, skipped = 0, step = v->step;
    for (size_t i = 0; v->step < 0 && i < r->count; i++) step = r->lines[i].step > step ? r->lines[i].step : step;
    const bool every = v->step < 0 && (v->prompt >= 0 || v->most == INT64_MAX); /* of all steps */
    for (size_t i = 0; i < r->count && shown < v->most; i++) {
        const RolloutLine *line = &r->lines[i];
        if (line->clip || (!every && line->step != step)) continue;
        json_t *group = json_loads(line->text, JSON_ALLOW_NUL, NULL);
        const bool wanted = v->prompt < 0 || json_integer_value(json_object_get(group, "prompt_id")) == v->prompt;
        if (wanted && !skipped && !v->json) rollouts_print_head(r, path);
        if (wanted && skipped++ >= v->start) {
            shown++;
            if (v->json) puts(line->text);
            else rollout_print_group(group, v);
        }
        json_decref(group);
    }
    if (skipped) return true;
    if (v->step >= 0 && v->prompt >= 0)
        return error_set(e, "%s: no group of prompt %lld in step %lld", path, (long long)v->prompt, (long long)v->step);
    if (v->prompt >= 0) return error_set(e, "%s: no group of prompt %lld", path, (long long)v->prompt);
    return error_set(e, "%s: no group of step %lld", path, (long long)step);
}

#endif
