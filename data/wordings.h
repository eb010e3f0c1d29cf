/* wordings.h - several wordings of one task, of which each row gets one: the templates of FLAN (Wei et al. 2022, section
 * 2.1) and T0 (Sanh et al. 2022, section 4).
 *
 * A file of wordings has a JSON object a line:
 *
 *     {"task": "nli", "prompt": "{premise}\nDoes it follow that {hypothesis}?", "completion": "{label}"}
 *
 * prompt      text with {field} for fields of the row; {{ is a brace
 * completion  the same; all wordings have one, or none: then the row's own completion or answer stays
 * task        the rows it is for: those whose task is equal; without it, all rows
 *
 * The wordings of a row are drawn from those for it by the row's number and the seed, without replacement, so they do not
 * depend on the other rows.
 *
 *     Wordings w;
 *     if (!wordings_open(&w, "wordings.jsonl", per_row, seed, &e)) die("%s", e.text);
 *     const int n = wordings_draw(&w, "nli", number, chosen);    // n of them: w.item[chosen[0]], ...
 *     wordings_close(&w);
 */
#ifndef DATA_WORDINGS_H
#define DATA_WORDINGS_H

#include "../llmc/base/error.h"  /* Error, error_set, xrealloc, xstrdup */
#include "../llmc/base/jsonl.h"  /* jsonl_error, Jsonl, jsonl_close, jsonl_next, ... */
#include "../llmc/base/random.h" /* RANDOM_WORDING, Random, random_below */
#include "row_fields.h"          /* row_pattern_check */

enum { WORDINGS_MAX = 4096, WORDINGS_PER_ROW_MAX = 64 };

typedef struct Wording {
    char *task; /* NULL: for all rows */
    char *prompt, *completion;
} Wording;

typedef struct Wordings {
    const char *path;
    Wording *item; /* (count) */
    int count, per_row;
    uint64_t seed;
} Wordings;

static inline void wordings_close(Wordings *w) {
    for (int i = 0; i < w->count; i++) free(w->item[i].task), free(w->item[i].prompt), free(w->item[i].completion);
    free(w->item);
    *w = (Wordings){0};
}

/* Copies a text of a wording to *to; its braces must be right if it is a template. */
static inline bool wording_text(const Jsonl *j, const json_t *row, const char *field, bool template, char **to,
                                Error *e) {
    Error why;
    const json_t *value = json_object_get(row, field);
    if (!value) return true;
    const char *text = jsonl_value_text(j, value, field, e);
    if (!text) return false;
    if (template && !row_pattern_check(text, NULL, &why)) return jsonl_error(j, field, e, "%s", why.text);
    *to = xstrdup(text);
    return true;
}

static inline bool wordings_add(Wordings *w, const Jsonl *j, json_t *row, Error *e) {
    const char *key;
    json_t *value;
    if (w->count == WORDINGS_MAX)
        return jsonl_error(j, NULL, e, "is wording %d; at most %d are possible", w->count + 1, WORDINGS_MAX);
    json_object_foreach(
        row, key,
        value) if (strcmp(key, "task") && strcmp(key, "prompt") &&
                   strcmp(key, "completion")) return jsonl_error(j, key, e,
                                                                 "is not one of a wording: task, prompt, completion");
    w->item = (Wording *)xrealloc(w->item, (size_t)w->count + 1, sizeof *w->item);
    Wording *one = &w->item[w->count++];
    *one = (Wording){0};
    if (!wording_text(j, row, "task", false, &one->task, e) || !wording_text(j, row, "prompt", true, &one->prompt, e) ||
        !wording_text(j, row, "completion", true, &one->completion, e))
        return false;
    if (!one->prompt) return jsonl_error(j, "prompt", e, "is absent, expected a text with {field}");
    if (!one->completion != !w->item[0].completion)
        return jsonl_error(j, "completion", e, "is in some of the wordings, but not in all");
    return true;
}

/* Reads a file of wordings. per_row: how many each row gets, 1 to WORDINGS_PER_ROW_MAX. */
static inline bool wordings_open(Wordings *w, const char *path, int per_row, uint64_t seed, Error *e) {
    Jsonl j;
    json_t *row;
    int more;
    *w = (Wordings){.path = path, .per_row = per_row, .seed = seed};
    if (!jsonl_open(&j, path, false, e)) return false;
    bool ok = true;
    while (ok && (more = jsonl_next(&j, &row, e)) != 0) ok = more > 0 && wordings_add(w, &j, row, e);
    if (ok && !w->count) ok = error_set(e, "%s: has no wording", path);
    jsonl_close(&j);
    if (!ok) wordings_close(w);
    return ok;
}

/* Draws the wordings of row `number`, which has this task ("" for none). Sets chosen[per_row]; returns how many there are,
 * at most per_row. */
static inline int wordings_draw(const Wordings *w, const char *task, uint64_t number, int *chosen) {
    int fit[WORDINGS_MAX], count = 0, drawn = 0;
    Random random = {w->seed, RANDOM_WORDING, number << 8};
    for (int i = 0; i < w->count; i++)
        if (!w->item[i].task || !strcmp(w->item[i].task, task)) fit[count++] = i;
    for (; drawn < w->per_row && drawn < count; drawn++) {
        const int left = count - drawn;
        const int k = (int)random_below(&random, (uint64_t)left);
        chosen[drawn] = fit[k];
        fit[k] = fit[left - 1];
    }
    return drawn;
}

#endif
