/* eval_sets.h - the sets of validation records, each of which has metrics of its own.
 *
 * The files of -j/--val that were given one name (inputs.h) are one set; a file without is a set with its own name, which
 * gets _2, _3, ... if another set has it. At most the first --max-eval-samples records of each set are used.
 *
 *     Inputs held = {0};
 *     const int file[] = {0, 0, 1};                                  // of each record
 *     EvalSets sets = eval_sets_new(&held, file, 3, 0);
 *     for (int k = 0; k < sets.count; k++)
 *         printf("%s: %lld records\n", sets.name[k], (long long)eval_set_size(&sets, k)); // eval_set(&sets, k)
 *     eval_sets_free(&sets);
 */
#ifndef LLMC_RECORDS_EVAL_SETS_H
#define LLMC_RECORDS_EVAL_SETS_H

#include "../base/error.h" /* xcalloc, xmalloc */
#include "inputs.h"        /* Inputs, inputs_name */

typedef struct EvalSets {
    int count;
    char **name;     /* (count) */
    int64_t *first;  /* (count + 1) set k has the records record[first[k]] ... record[first[k+1] - 1] */
    int64_t *record; /* numbers of records among those of all files, those of each set in order */
    bool told;       /* the sets have metrics of their own: there are several, or the only one was named */
} EvalSets;

static inline const int64_t *eval_set(const EvalSets *s, int k) { return s->record + s->first[k]; }
static inline int64_t eval_set_size(const EvalSets *s, int k) { return s->first[k + 1] - s->first[k]; }

/* The number of records of all sets. */
static inline int64_t eval_sets_size(const EvalSets *s) { return s->count ? s->first[s->count] : 0; }

static inline void eval_sets_free(EvalSets *s) {
    for (int k = 0; k < s->count; k++) free(s->name[k]);
    free(s->name), free(s->first), free(s->record);
    *s = (EvalSets){0};
}

/* The set of file i: that of an earlier file that was given the same name, or a new one. */
static inline int eval_sets_add(EvalSets *s, const Inputs *files, const int *set_of, int i) {
    for (int k = 0; files->label[i] && k < i; k++)
        if (set_of[k] >= 0 && files->label[k] && !strcmp(files->label[i], files->label[k])) return set_of[k];
    enum { LONGEST = 100 }; /* bytes of a name */
    char *own = inputs_name(files, i), *name = (char *)xmalloc(LONGEST + 16);
    if (strlen(own) > LONGEST) own[LONGEST] = '\0';
    strcpy(name, own);
    for (int k = 0, number = 1; k < s->count; k++) {
        if (strcmp(s->name[k], name)) continue;
        sprintf(name, "%s_%d", own, ++number);
        k = -1; /* from the first set again */
    }
    free(own);
    s->name[s->count] = name;
    return s->count++;
}

/* Makes the sets. file: (records) the number of each record's file among `files`; most: maximum number of records of a
 * set, or 0 for all. A file without a record adds no set. */
static inline EvalSets eval_sets_new(const Inputs *files, const int *file, int64_t records, int64_t most) {
    EvalSets s = {0};
    int *set_of = (int *)xcalloc((size_t)files->count + 1, sizeof *set_of);
    bool *used = (bool *)xcalloc((size_t)files->count + 1, sizeof *used);
    s.name = (char **)xcalloc((size_t)files->count + 1, sizeof *s.name);
    s.first = (int64_t *)xcalloc((size_t)files->count + 1, sizeof *s.first);
    s.record = (int64_t *)xmalloc(((size_t)records + 1) * sizeof *s.record);
    for (int64_t i = 0; i < records; i++) used[file[i]] = true;
    for (int i = 0; i < files->count; i++) set_of[i] = used[i] ? eval_sets_add(&s, files, set_of, i) : -1;
    for (int k = 0; k < s.count; k++) {
        int64_t n = s.first[k];
        for (int64_t i = 0; i < records && (!most || n - s.first[k] < most); i++)
            if (set_of[file[i]] == k) s.record[n++] = i;
        s.first[k + 1] = n;
    }
    s.told = s.count > 1;
    for (int i = 0; i < files->count; i++) s.told = s.told || files->label[i];
    free(set_of), free(used);
    return s;
}

#endif
