/* mix.h - the order of the training records of one or several files.
 *
 * Without weights, the records of all files are one set in one random order per epoch (cursor.h). A mixture draws each
 * record from file i with probability or frequency p_i, its share:
 *
 *     weights        p_i ~ weight_i
 *     proportional   p_i ~ min(n_i, cap_i)                  (Raffel et al. 2020, T5, section 3.5.2; Wei et al. 2022, FLAN)
 *     temperature    p_i ~ min(n_i, cap_i)^(1/T)            (T5; Xue et al. 2021, mT5, with alpha = 1/T)
 *     equal          p_i = 1 / number of files
 *
 * n_i is the number of records that a pass takes of the file: all of them, or those of an amount (inputs.h). With
 * 0.5x or 2000n these are a random part of the file, the same one in each pass, and above 1x some of them several times.
 *
 * The next file is the one with the largest deficit p_i N - drawn_i, N counting the record to be drawn; of equal ones
 * the first. So after any number of records N, the number drawn of a file is less than p_i N + 1, and greater than p_i N
 * minus the number of files. With `random` the file is drawn with probability p_i instead. Within a file the records follow one another without
 * replacement: each has a random order of its own in each of its epochs. A file that has reached its maximum number of
 * epochs leaves the mixture, and the shares of the others grow in proportion.
 *
 * A pass over the mixture is as long as all files (MIX_STEPS), or ends with the record that completes the first
 * file's pass (MIX_FIRST) or the last one's (MIX_ALL): `first_exhausted` and `all_exhausted` of Hugging Face's
 * interleave_datasets().
 *
 *     Mix m;
 *     Inputs files = {0};                                             // inputs.h
 *     const int64_t records[] = {120, 40};                            // of each file
 *     const MixConfig how = {.mixing = MIX_WEIGHTS, .temperature = 2};
 *     if (!mix_new(&m, &files, records, &how, seed, &e)) die("%s", e.text);
 *     if (!mix_resume(&m, state, &e)) die("%s", e.text);          // a new run starts at 0
 *     const int64_t record = mix_next(&m);                        // among the records of all files
 *     mix_save(&m, state);
 *     mix_free(&m);
 */
#ifndef LLMC_RECORDS_MIX_H
#define LLMC_RECORDS_MIX_H

#include "../base/error.h"  /* error_set, Error, xmalloc, xcalloc, ... */
#include "../base/random.h" /* RANDOM_MIXTURE, Random, random_real, random_shuffle, ... */
#include "cursor.h"         /* cursor_taken, Cursor, cursor_new, cursor_next, ... */
#include "inputs.h"         /* Inputs, AMOUNT_WEIGHT, InputAmount, inputs_name, ... */
#include <jansson.h>
#include <math.h>

typedef enum { MIX_WEIGHTS, MIX_PROPORTIONAL, MIX_TEMPERATURE, MIX_EQUAL } MixKind;
#define MIX_CHOICES "weights|proportional|temperature|equal" /* in the order of MixKind */

typedef enum { MIX_STEPS, MIX_FIRST, MIX_ALL } MixStop;
#define MIX_STOP_CHOICES "steps|first_exhausted|all_exhausted" /* in the order of MixStop */

typedef struct MixConfig {
    bool plain; /* no mixture: the records of all files are one set */
    MixKind mixing;
    MixStop stop;
    double temperature; /* MIX_TEMPERATURE */
    bool random;        /* draw the file at random */
} MixConfig;

typedef struct MixFile {
    char *name;           /* inputs_name(), or the path if that is another file's name, too */
    const char *path;     /* of Inputs */
    double share;         /* p */
    int64_t first, count; /* its records among those of all files */
    int64_t rows;         /* records of a pass over it */
    int64_t limit;        /* records that may be drawn of it; INT64_MAX: no limit */
    int64_t *pick;        /* (rows) the records of a pass, from 0; NULL: all */
    Cursor cursor;
    int64_t drawn; /* since a file left the mixture */
} MixFile;

typedef struct Mix {
    MixConfig how;
    uint64_t seed;
    int count;      /* files; 1 if `plain` */
    MixFile *file;  /* (count) */
    int64_t taken;  /* records drawn */
    int64_t drawn;  /* since a file left the mixture */
    int64_t length; /* records of a pass over the mixture */
    int64_t limit;  /* records that may be drawn; INT64_MAX: no limit. Beyond it the limits of the files start over */
    bool exceeded;  /* the user was told that more were drawn */
} Mix;

static inline void mix_free(Mix *m) {
    for (int k = 0; k < m->count; k++) {
        free(m->file[k].name), free(m->file[k].pick);
        cursor_free(&m->file[k].cursor);
    }
    free(m->file);
    *m = (Mix){0};
}

/* ---- the order of the files ------------------------------------------------------------------------------------ */

/* Whether file k can be drawn. round: how often all limits have been reached. */
static inline bool mix_active(const Mix *m, int k, int64_t round) {
    const MixFile *f = &m->file[k];
    return f->share > 0 && (f->limit == INT64_MAX || cursor_taken(&f->cursor) < (round + 1) * f->limit);
}

/* Counts as drawn one record of the next file. Returns the file's number. */
static inline int mix_draw(Mix *m) {
    const int64_t round = m->limit == INT64_MAX ? 0 : m->taken / m->limit;
    Random random = {m->seed, RANDOM_MIXTURE, (uint64_t)m->taken};
    double all = 0, largest = -INFINITY, left = 0;
    int next = 0;
    for (int k = 0; k < m->count; k++)
        if (mix_active(m, k, round)) all += m->file[k].share;
    if (m->how.random) left = all * random_real(&random);
    for (int k = 0; k < m->count; k++) {
        const MixFile *f = &m->file[k];
        if (!mix_active(m, k, round)) continue;
        const double deficit = f->share / all * (double)(m->drawn + 1) - (double)f->drawn;
        if (m->how.random ? left >= 0 : deficit > largest) next = k;
        if (deficit > largest) largest = deficit;
        left -= f->share;
    }
    m->taken++;
    m->drawn++;
    m->file[next].drawn++;
    return next;
}

/* Begins to count anew if file k has left the mixture, because the shares of the others are now larger. Call it after
 * the file's cursor has moved. */
static inline void mix_settle(Mix *m, int k) {
    const int64_t limit = m->file[k].limit;
    if (limit == INT64_MAX || cursor_taken(&m->file[k].cursor) % limit) return;
    for (int i = 0; i < m->count; i++) m->file[i].drawn = 0;
    m->drawn = 0;
}

/* The next record, among those of all files. */
static inline int64_t mix_next(Mix *m) {
    if (m->how.plain) {
        m->taken++;
        return cursor_next(&m->file[0].cursor);
    }
    const int k = mix_draw(m);
    MixFile *f = &m->file[k];
    const int64_t row = cursor_next(&f->cursor);
    mix_settle(m, k);
    return f->first + (f->pick ? f->pick[row] : row);
}

/* Begins at the first record again. */
static inline void mix_rewind(Mix *m) {
    for (int k = 0; k < m->count; k++) {
        if (cursor_taken(&m->file[k].cursor)) cursor_epoch(&m->file[k].cursor, 0);
        m->file[k].drawn = 0;
    }
    m->taken = m->drawn = 0;
}

/* ---- making ---------------------------------------------------------------------------------------------------- */

/* Names each file for metrics. */
static inline void mix_name(Mix *m, const Inputs *files) {
    for (int k = 0; k < m->count; k++) {
        bool shared = false;
        char *name = inputs_name(files, k);
        for (int i = 0; i < m->count && !shared; i++) {
            char *other = inputs_name(files, i);
            shared = i != k && !strcmp(name, other);
            free(other);
        }
        m->file[k].name = shared ? xstrdup(m->file[k].path) : name;
        if (shared) free(name);
    }
}

/* Sets the records of a pass over file k, and its limit. */
static inline bool mix_take(Mix *m, int k, const InputAmount *a, Error *e) {
    MixFile *f = &m->file[k];
    f->rows = a->kind == AMOUNT_PASSES    ? (int64_t)llround(a->value * (double)f->count)
              : a->kind == AMOUNT_RECORDS ? (int64_t)a->value
                                          : f->count;
    f->limit = a->epochs > 0 ? (int64_t)ceil(a->epochs * (double)f->rows) : INT64_MAX;
    if (!f->rows) return error_set(e, "%s: %gx of its %lld records is none", f->path, a->value, (long long)f->count);
    if (f->rows > (int64_t)1 << 31)
        return error_set(e, "%s: a pass would take %lld records of it, at most %lld are possible", f->path,
                         (long long)f->rows, (long long)1 << 31);
    if (f->rows == f->count) return true;
    Random random = random_start(m->seed, RANDOM_MIXTURE + 1 + (uint64_t)k);
    int64_t *order = (int64_t *)xmalloc((size_t)f->count * sizeof *order);
    for (int64_t i = 0; i < f->count; i++) order[i] = i;
    random_shuffle(&random, order, f->count);
    f->pick = (int64_t *)xmalloc((size_t)f->rows * sizeof *f->pick);
    for (int64_t i = 0; i < f->rows; i++) f->pick[i] = order[i % f->count];
    free(order);
    return true;
}

static inline const char *mix_kind_name(MixKind kind) {
    static const char *const names[] = {"weights", "proportional", "temperature", "equal"};
    return names[kind];
}

/* Whether a file has a weight. */
static inline bool mix_weighted(const Inputs *files) {
    bool weighted = false;
    for (int k = 0; k < files->count; k++) weighted = weighted || files->amount[k].kind == AMOUNT_WEIGHT;
    return weighted;
}

/* Fails if a weight or a cap has no effect, or if all weights are 0. Needs only the names of the files. */
static inline bool mix_check(const Inputs *files, const MixConfig *how, Error *e) {
    const bool weighted = mix_weighted(files);
    double sum = 0;
    for (int k = 0; k < files->count; k++) {
        const InputAmount *a = &files->amount[k];
        const bool weight = a->kind == AMOUNT_WEIGHT;
        if (how->mixing != MIX_WEIGHTS && weight && a->value != 1)
            return error_set(e, "--mixing %s: does not use the weight %g of %s; give it no weight, or --mixing weights",
                             mix_kind_name(how->mixing), a->value, files->path[k]);
        if (a->cap && (how->mixing == MIX_EQUAL || (how->mixing == MIX_WEIGHTS && weighted)))
            return error_set(e,
                             "--mixing %s: does not use the cap %lld of %s; give --mixing proportional or temperature",
                             mix_kind_name(how->mixing), (long long)a->cap, files->path[k]);
        sum += weight ? a->value : 1;
    }
    return (sum > 0 && isfinite(sum)) || error_set(e, "the weights of all files are 0, or their sum is infinite");
}

/* Sets the shares. */
static inline void mix_share(Mix *m, const Inputs *files) {
    const bool weighted = mix_weighted(files);
    double sum = 0;
    for (int k = 0; k < m->count; k++) {
        MixFile *f = &m->file[k];
        const InputAmount *a = &files->amount[k];
        const double rows = a->cap && a->cap < f->rows ? (double)a->cap : (double)f->rows;
        switch (m->how.mixing) {
        case MIX_WEIGHTS: f->share = a->kind == AMOUNT_WEIGHT ? a->value : weighted ? 1 : rows; break;
        case MIX_PROPORTIONAL: f->share = rows; break;
        case MIX_TEMPERATURE: f->share = pow(rows, 1 / m->how.temperature); break;
        case MIX_EQUAL: f->share = 1; break;
        }
        sum += f->share;
    }
    for (int k = 0; k < m->count; k++) m->file[k].share /= sum;
}

/* The length of a pass that ends when the first file, or all files, have been seen once. */
static inline int64_t mix_exhaust(Mix *m) {
    int left = 0;
    for (int k = 0; k < m->count; k++) left += m->file[k].share > 0;
    while (left > 0 && m->taken < m->limit) {
        const int k = mix_draw(m);
        MixFile *f = &m->file[k];
        Cursor *c = &f->cursor;
        if (++c->position == c->count) { /* the order of the records does not matter here */
            c->epoch++;
            c->position = 0;
        }
        const int64_t once = f->limit < f->rows ? f->limit : f->rows;
        if (cursor_taken(c) == once) left = m->how.stop == MIX_FIRST ? 0 : left - 1;
        mix_settle(m, k);
    }
    const int64_t length = m->taken;
    mix_rewind(m);
    return length;
}

/* Sets the length of a pass and the limit of the mixture. */
static inline bool mix_measure(Mix *m, Error *e) {
    const double MOST = 1e10; /* records of a pass */
    double longest = 0;
    int64_t rows = 0;
    m->limit = 0;
    for (int k = 0; k < m->count; k++) {
        const MixFile *f = &m->file[k];
        if (f->share <= 0) continue;
        rows += f->rows;
        longest = fmax(longest, (double)f->rows / f->share);
        if (f->limit == INT64_MAX || m->limit == INT64_MAX) m->limit = INT64_MAX;
        else m->limit += f->limit;
    }
    if (m->how.stop == MIX_ALL && longest > MOST && m->limit > MOST)
        return error_set(
            e, "--stopping-strategy all_exhausted: a pass would have %.3g records, because of a small share", longest);
    m->length = m->how.stop == MIX_STEPS ? rows : mix_exhaust(m);
    return true;
}

/* Begins at the first record of `count` files. files: must outlive the mixture; records: (files) those of each file. */
static inline bool mix_new(Mix *m, const Inputs *files, const int64_t *records, const MixConfig *how, uint64_t seed,
                           Error *e) {
    int64_t first = 0;
    bool ok = true;
    *m = (Mix){.how = *how, .seed = seed, .count = how->plain ? 1 : files->count, .limit = INT64_MAX};
    m->file = (MixFile *)xcalloc((size_t)m->count, sizeof *m->file);
    if (how->plain) {
        for (int k = 0; k < files->count; k++) m->length += records[k];
        m->file[0].cursor = cursor_new(m->length, seed, 0);
        return true;
    }
    for (int k = 0; k < m->count; k++) {
        MixFile *f = &m->file[k];
        f->path = files->path[k];
        f->first = first;
        f->count = records[k];
        first += f->count;
    }
    for (int k = 0; ok && k < m->count; k++) {
        if (!records[k]) ok = error_set(e, "%s: none of its records is left for the mixture", files->path[k]);
        else ok = mix_take(m, k, &files->amount[k], e);
    }
    ok = ok && mix_check(files, how, e);
    if (ok) mix_share(m, files);
    for (int k = 0; ok && k < m->count; k++) m->file[k].cursor = cursor_new(m->file[k].rows, seed, (uint64_t)k + 1);
    ok = ok && mix_measure(m, e);
    if (ok) mix_name(m, files);
    else mix_free(m);
    return ok;
}

/* ---- use --------------------------------------------------------------------------------------------------------- */

/* The number of records that so many passes take; fewer if the files' limits allow no more. */
static inline double mix_records(const Mix *m, double passes) {
    const double records = passes * (double)m->length;
    return m->limit == INT64_MAX ? records : fmin(records, (double)m->limit);
}

/* The passes since the beginning. */
static inline double mix_epochs(const Mix *m) {
    return m->how.plain ? cursor_epochs(&m->file[0].cursor) : (double)m->taken / (double)m->length;
}

/* The passes over all records of file k, and its share of the records drawn so far. */
static inline double mix_file_epochs(const Mix *m, int k) {
    return (double)cursor_taken(&m->file[k].cursor) / (double)m->file[k].count;
}
static inline double mix_file_share(const Mix *m, int k) {
    return (double)cursor_taken(&m->file[k].cursor) / (double)m->taken;
}

static inline void mix_save(const Mix *m, json_t *state) {
    if (m->how.plain) {
        cursor_save(&m->file[0].cursor, state);
        return;
    }
    json_t *files = json_array();
    for (int k = 0; k < m->count; k++) {
        const MixFile *f = &m->file[k];
        json_t *one =
            json_pack("{s:I, s:f, s:I}", "rows", (json_int_t)f->rows, "share", f->share, "drawn", (json_int_t)f->drawn);
        json_object_set_new(one, "limit", json_integer(f->limit));
        cursor_save(&f->cursor, one);
        json_array_append_new(files, one);
    }
    json_object_set_new(state, "mixture", files);
}

/* Moves file k to its position in a state. False if the state was made with other files. */
static inline bool mix_resume_file(Mix *m, int k, const json_t *state) {
    MixFile *f = &m->file[k];
    f->drawn = json_integer_value(json_object_get(state, "drawn"));
    if (json_integer_value(json_object_get(state, "rows")) != f->rows || f->drawn < 0 ||
        json_integer_value(json_object_get(state, "limit")) != f->limit ||
        json_real_value(json_object_get(state, "share")) != f->share ||
        json_integer_value(json_object_get(state, "epoch")) < 0 || !cursor_resume(&f->cursor, state))
        return false;
    m->taken += cursor_taken(&f->cursor);
    m->drawn += f->drawn;
    return true;
}

/* Moves to the position in a state, or stays at the beginning if the state has none. Fails if the run that wrote it had
 * other records or another mixture. */
static inline bool mix_resume(Mix *m, const json_t *state, Error *e) {
    const json_t *files = json_object_get(state, "mixture"), *position = json_object_get(state, "position");
    if (m->how.plain && files) return error_set(e, "the state was made with a mixture of data, which this run has not");
    if (m->how.plain) {
        if (!cursor_resume(&m->file[0].cursor, state))
            return error_set(e, "the state was made with other records, as by another maximum length");
        m->taken = cursor_taken(&m->file[0].cursor);
        return true;
    }
    if (!files && !position) return true;
    bool same = json_array_size(files) == (size_t)m->count;
    for (int k = 0; same && k < m->count; k++) same = mix_resume_file(m, k, json_array_get(files, (size_t)k));
    return same ||
           error_set(e, "the state was made with another mixture of data: repeat its files, weights and options");
}

#endif
