/* cursor.h - order of the training records: a new permutation per epoch.
 *
 * The permutation is a function of the seed, a number and the epoch alone, so a training state stores a position as two
 * numbers.
 *
 *     Cursor c = cursor_new(count, seed, 0);
 *     if (!cursor_resume(&c, state)) die("the state was made with other records");    // a new run starts at 0
 *     int64_t record = cursor_next(&c);
 *     cursor_save(&c, state);
 *     cursor_free(&c);
 */
#ifndef LLMC_RECORDS_CURSOR_H
#define LLMC_RECORDS_CURSOR_H

#include "../base/error.h"  /* xmalloc */
#include "../base/random.h" /* RANDOM_SHUFFLE, Random, random_shuffle, random_start */
#include <jansson.h>

typedef struct Cursor {
    uint64_t seed, number;          /* cursors with different numbers have different orders */
    int64_t count, epoch, position; /* number of records; current epoch and number of its records used */
    int64_t *order;                 /* (count) permutation of `epoch` */
} Cursor;

static inline void cursor_epoch(Cursor *c, int64_t epoch) {
    Random random = random_start(c->seed, RANDOM_SHUFFLE + (c->number << 32) + (uint64_t)epoch);
    for (int64_t i = 0; i < c->count; i++) c->order[i] = i;
    random_shuffle(&random, c->order, c->count);
    c->epoch = epoch;
    c->position = 0;
}

/* Starts at the beginning of the first epoch of `count` >= 1 records. number: below 2^24. */
static inline Cursor cursor_new(int64_t count, uint64_t seed, uint64_t number) {
    Cursor c = {.seed = seed, .number = number, .count = count};
    c.order = (int64_t *)xmalloc((size_t)count * sizeof *c.order);
    cursor_epoch(&c, 0);
    return c;
}

static inline void cursor_free(Cursor *c) {
    free(c->order);
    *c = (Cursor){0};
}

static inline int64_t cursor_next(Cursor *c) {
    if (c->position == c->count) cursor_epoch(c, c->epoch + 1);
    return c->order[c->position++];
}

/* The number of records used since the beginning; cursor_epochs() gives it in epochs. */
static inline int64_t cursor_taken(const Cursor *c) { return c->epoch * c->count + c->position; }
static inline double cursor_epochs(const Cursor *c) {
    return (double)c->epoch + (double)c->position / (double)c->count;
}

static inline void cursor_save(const Cursor *c, json_t *state) {
    json_object_set_new(state, "epoch", json_integer(c->epoch));
    json_object_set_new(state, "position", json_integer(c->position));
}

/* Moves to the position in a state, or to the beginning if the state has none. Returns false if the position is past
 * the last record, because the run that wrote the state had more records. */
static inline bool cursor_resume(Cursor *c, const json_t *state) {
    const int64_t position = json_integer_value(json_object_get(state, "position"));
    if (position < 0 || position > c->count) return false;
    cursor_epoch(c, json_integer_value(json_object_get(state, "epoch")));
    c->position = position;
    return true;
}

#endif
