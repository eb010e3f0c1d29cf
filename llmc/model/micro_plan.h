/* micro_plan.h - division of a step's items into micro-batches.
 *
 * An item is a unit that is never split: a record, a pair, a completion. A plan is made from the sizes of the items,
 * before anything is packed, so a trainer knows the number of its micro-batches before it runs the first one. Items are
 * taken in order, as many per micro-batch as its capacity allows:
 *
 *     MicroPlan plan = {0};
 *     micro_plan_begin(&plan, &batch, 0);                   // pack.h
 *     for (int32_t i = 0; i < n; i++) micro_plan_add(&plan, (BatchSize){item[i].count, item[i].count - 1, 1});
 *     for (int32_t m = 0; m < plan.micros; m++) {
 *         batch_clear(&batch);
 *         for (int32_t i = plan.first[m]; i < plan.first[m + 1]; i++)
 *             batch_sequence(&batch, item[i].tokens, NULL, item[i].count);
 *         run(&batch);
 *     }
 *     micro_plan_free(&plan);
 */
#ifndef LLMC_MODEL_MICRO_PLAN_H
#define LLMC_MODEL_MICRO_PLAN_H

#include "../base/error.h" /* xmalloc, xrealloc */
#include "batch.h"         /* Batch */

/* The space that an item takes up in a batch. */
typedef struct BatchSize {
    int64_t rows, targets, segments;
} BatchSize;

typedef struct MicroPlan {
    int32_t micros;        /* number of micro-batches */
    int32_t *first;        /* (micros + 1) micro-batch m holds items first[m] ... first[m+1]-1 */
    int32_t capacity;      /* of first */
    BatchSize limit, used; /* limit: of a micro-batch; used: by the last one */
} MicroPlan;

static inline void micro_plan_free(MicroPlan *p) {
    free(p->first);
    *p = (MicroPlan){0};
}

/* Begins an empty plan for micro-batches of b's capacity. Items are numbered from `start`. The memory of an earlier
 * plan is reused. */
static inline void micro_plan_begin(MicroPlan *p, const Batch *b, int32_t start) {
    p->micros = 0;
    p->limit = (BatchSize){b->rows_max, b->targets_max, b->segments_max};
    if (!p->first) {
        p->capacity = 16;
        p->first = (int32_t *)xmalloc((size_t)p->capacity * sizeof *p->first);
    }
    p->first[0] = start;
}

/* True if an item of this size fits into the rest of the last micro-batch. */
static inline bool micro_plan_fits(const MicroPlan *p, BatchSize item) {
    return p->micros && p->used.rows + item.rows <= p->limit.rows &&
           p->used.targets + item.targets <= p->limit.targets && p->used.segments + item.segments <= p->limit.segments;
}

/* Adds the next item. Returns true if it is the first one of a micro-batch. */
static inline bool micro_plan_add(MicroPlan *p, BatchSize item) {
    const bool begins = !micro_plan_fits(p, item);
    if (begins) {
        if (p->micros + 2 > p->capacity) {
            p->capacity *= 2;
            p->first = (int32_t *)xrealloc(p->first, (size_t)p->capacity, sizeof *p->first);
        }
        p->first[p->micros + 1] = p->first[p->micros];
        p->micros++;
        p->used = (BatchSize){0};
    }
    p->first[p->micros]++;
    p->used.rows += item.rows;
    p->used.targets += item.targets;
    p->used.segments += item.segments;
    return begins;
}

#endif
