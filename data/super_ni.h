/* super_ni.h - tasks of Super-NaturalInstructions (Wang et al. 2022) as rows: the encoding of Tk-Instruct, a definition with
 * examples before the input.
 *
 * A task is a JSON object; only these of its fields are read:
 *
 *   Definition                              a text, or a list of one
 *   Positive Examples, Negative Examples    lists of {input, output, explanation}
 *   Instances                               a list of {id, input, output}; output is a list of texts that are all right
 *   Categories                              a list of texts, of which the first becomes the row's cluster
 *
 * A copy with one `Instance`, as Tk-Instruct's own reader makes them, is read, too. The prompt, with N as
 * --num-pos-examples (ni_collator.py of Tk-Instruct), is
 *
 *     Definition: {definition}
 *
 *      Positive Example 1 -
 *     Input: {input}
 *      Output: {output}
 *
 *     Now complete the following example -
 *     Input: {input}
 *     Output: (and a space)
 *
 * in which a full stop follows each text that does not end with punctuation. The completion is one of the outputs, drawn by
 * the seed. With --max-source-length, examples are added only up to the first that would make the prompt longer.
 *
 *     SuperNi ni = {.positive = 2, .seed = 42};
 *     Tokenizer tokenizer;
 *     json_t *task = json_object(), *one;
 *     const size_t instances = super_ni_count(task);
 *     if (!(one = super_ni_row(&ni, &tokenizer, &j, task, 0, false, &e))) die("%s", e.text);     // prompt, completion
 */
#ifndef DATA_SUPER_NI_H
#define DATA_SUPER_NI_H

#include "../llmc/base/error.h"     /* Error */
#include "../llmc/base/json_text.h" /* json_utf8 */
#include "../llmc/base/jsonl.h"     /* Jsonl, jsonl_value_text, jsonl_error, jsonl_type */
#include "../llmc/base/random.h"    /* RANDOM_WORDING, Random, random_below */
#include "../llmc/base/text.h"      /* TextBuffer, text_string, text_append, text_free, ... */
#include "../llmc/text/tokenizer.h" /* Tokenizer, tokenizer_encode */
#include <ctype.h>
#include <jansson.h>

/* How tasks are read; the names and defaults of options are Tk-Instruct's. */
typedef struct SuperNi {
    bool on;
    bool explanation;           /* --add-explanation */
    int64_t positive, negative; /* --num-pos-examples, --num-neg-examples */
    int64_t max_source;         /* --max-source-length; 0: no limit */
    int64_t per_task;           /* --max-num-instances-per-task; 0: all */
    uint64_t seed;
} SuperNi;

/* ---- texts --------------------------------------------------------------------------------------------------------- */

/* Appends a text without white space around it, and a full stop if what is there does not end with punctuation. */
static inline void super_ni_sentence(TextBuffer *out, const char *before, const char *text) {
    size_t n = strlen(text);
    while (n && isspace((unsigned char)text[n - 1])) n--;
    size_t at = 0;
    while (at < n && isspace((unsigned char)text[at])) at++;
    text_string(out, before);
    text_append(out, text + at, n - at);
    if (!ispunct((unsigned char)out->text[out->length - 1])) text_string(out, ".");
}

/* The text `key` of an object that is `where` in the task. */
static inline const char *super_ni_text(const Jsonl *j, const json_t *object, const char *where, const char *key,
                                        Error *e) {
    char field[120];
    const json_t *value = json_object_get(object, key);
    snprintf(field, sizeof field, "%s.%s", where, key);
    return jsonl_value_text(j, value, field, e);
}

/* The definition: a text, or the first of a list. */
static inline const char *super_ni_definition(const Jsonl *j, const json_t *task, Error *e) {
    const json_t *value = json_object_get(task, "Definition");
    return jsonl_value_text(j, json_is_array(value) ? json_array_get(value, 0) : value, "Definition", e);
}

/* ---- the prompt ---------------------------------------------------------------------------------------------------- */

/* Appends example i, from 0, of a list; kind: "Positive" or "Negative". */
static inline bool super_ni_example(const SuperNi *o, const Jsonl *j, const json_t *list, size_t i, const char *kind,
                                    TextBuffer *out, Error *e) {
    char where[80];
    const json_t *example = json_array_get(list, i), *explained = json_object_get(example, "explanation");
    snprintf(where, sizeof where, "%s Examples.%zu", kind, i);
    const char *input = super_ni_text(j, example, where, "input", e),
               *output = input ? super_ni_text(j, example, where, "output", e) : NULL;
    if (!output) return false;
    text_format(out, " %s Example %zu -\n", kind, i + 1);
    super_ni_sentence(out, "Input: ", input);
    super_ni_sentence(out, "\n Output: ", output);
    if (o->explanation && explained && !json_is_null(explained)) {
        const char *text = super_ni_text(j, example, where, "explanation", e);
        if (!text) return false;
        super_ni_sentence(out, "\n Explanation: ", text);
    }
    text_string(out, "\n\n");
    return true;
}

/* Whether two texts, one after the other, have at most --max-source-length tokens. */
static inline bool super_ni_fits(const SuperNi *o, const Tokenizer *t, const TextBuffer *a, const TextBuffer *b) {
    TokenList ids = {0};
    TextBuffer both = {0};
    if (!o->max_source) return true;
    text_append(&both, a->text, a->length);
    text_append(&both, b->text, b->length);
    const bool fits = tokenizer_encode(t, both.text, both.length, 0, &ids, NULL) && ids.count <= o->max_source;
    token_list_free(&ids), text_free(&both);
    return fits;
}

/* Appends the first `count` examples of a kind, as far as they fit before `end`. */
static inline bool super_ni_examples(const SuperNi *o, const Tokenizer *t, const Jsonl *j, const json_t *task,
                                     const char *kind, int64_t count, const TextBuffer *end, TextBuffer *out,
                                     Error *e) {
    char name[40];
    snprintf(name, sizeof name, "%s Examples", kind);
    const json_t *list = json_object_get(task, name);
    if (!count) return true;
    if (!json_is_array(list)) return jsonl_error(j, name, e, "is %s, expected a list of examples", jsonl_type(list));
    for (size_t i = 0; i < (size_t)count && i < json_array_size(list); i++) {
        const size_t before = out->length;
        if (!super_ni_example(o, j, list, i, kind, out, e)) return false;
        if (super_ni_fits(o, t, out, end)) continue;
        out->length = before;
        out->text[before] = 0;
        return true;
    }
    return true;
}

/* ---- instances ------------------------------------------------------------------------------------------------------ */

static inline const json_t *super_ni_instance(const json_t *task, size_t i) {
    const json_t *one = json_object_get(task, "Instance");
    return one ? one : json_array_get(json_object_get(task, "Instances"), i);
}

/* The number of a task's instances. */
static inline size_t super_ni_count(const json_t *task) {
    return json_object_get(task, "Instance") ? 1 : json_array_size(json_object_get(task, "Instances"));
}

/* One of the right outputs of instance i, drawn by the seed. *list: all of them, if there are several. */
static inline const char *super_ni_output(const SuperNi *o, const Jsonl *j, const json_t *instance, const char *where,
                                          size_t i, const json_t **list, Error *e) {
    char field[120];
    const json_t *value = json_object_get(instance, "output");
    const size_t count = json_array_size(value);
    Random random = {o->seed, RANDOM_WORDING, (((uint64_t)j->line << 32) + i) << 8};
    snprintf(field, sizeof field, "%s.output", where);
    *list = count > 1 ? value : NULL;
    if (json_is_array(value)) value = json_array_get(value, count > 1 ? (size_t)random_below(&random, count) : 0);
    return jsonl_value_text(j, value, field, e);
}

/* Writes the prompt of an instance. */
static inline bool super_ni_prompt(const SuperNi *o, const Tokenizer *t, const Jsonl *j, const json_t *task,
                                   const json_t *instance, const char *where, TextBuffer *out, Error *e) {
    TextBuffer end = {0};
    const char *definition = super_ni_definition(j, task, e),
               *input = definition ? super_ni_text(j, instance, where, "input", e) : NULL;
    if (!input) return false;
    super_ni_sentence(out, "Definition: ", definition);
    text_string(out, "\n\n");
    super_ni_sentence(&end, "Now complete the following example -\nInput: ", input);
    text_string(&end, "\nOutput: ");
    const bool ok = super_ni_examples(o, t, j, task, "Positive", o->positive, &end, out, e) &&
                    super_ni_examples(o, t, j, task, "Negative", o->negative, &end, out, e);
    text_append(out, end.text, end.length);
    text_free(&end);
    return ok;
}

/* The row of instance i of a task: prompt, and completion, or with `answers` what a verifier reads. The caller owns it; NULL on
 * failure. */
static inline json_t *super_ni_row(const SuperNi *o, const Tokenizer *t, const Jsonl *j, const json_t *task, size_t i,
                                   bool answers, Error *e) {
    char where[40];
    TextBuffer prompt = {0};
    const json_t *instance = super_ni_instance(task, i), *list, *id = json_object_get(instance, "id"),
                 *category = json_array_get(json_object_get(task, "Categories"), 0);
    if (json_object_get(task, "Instance")) snprintf(where, sizeof where, "Instance");
    else snprintf(where, sizeof where, "Instances.%zu", i);
    const char *output = super_ni_output(o, j, instance, where, i, &list, e);
    json_t *row = NULL;
    if (output && super_ni_prompt(o, t, j, task, instance, where, &prompt, e)) {
        row = json_object();
        json_object_set_new(row, "prompt", json_utf8(prompt.text, prompt.length));
        json_object_set_new(row, answers ? "answer" : "completion", json_string(output));
        if (answers && list) json_object_set(row, "answers", (json_t *)list);
        if (answers && id) json_object_set(row, "id", (json_t *)id);
        if (json_is_string(category)) json_object_set(row, "cluster", (json_t *)category);
    }
    text_free(&prompt);
    return row;
}

/* Whether instance i of `count` is one of the --max-num-instances-per-task that are kept: these are drawn by the seed and the
 * task's line, and stay in their order. left: how many are still to be kept; begin with o->per_task. */
static inline bool super_ni_keeps(const SuperNi *o, const Jsonl *j, size_t i, size_t count, int64_t *left) {
    if (!o->per_task) return true;
    Random random = {o->seed, RANDOM_WORDING, ((((uint64_t)j->line << 32) + i) << 8) + 128};
    if (random_below(&random, count - i) >= (uint64_t)*left) return false; /* selection sampling (Knuth 3.4.2, S) */
    --*left;
    return true;
}

#endif
