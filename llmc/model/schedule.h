/* schedule.h - learning-rate schedules, as a factor of the peak rate.
 *
 *   warm-up    step / warmup                           linear from 0, for step < warmup
 *   constant   1
 *   linear     1 - p                                   p = (step - warmup) / (steps - warmup)
 *   cosine     (1 + cos(pi p)) / 2                     Loshchilov and Hutter 2017 (1608.03983), one half period
 *   wsd        1; in the last `decay` steps, with q = (step - (steps - decay)) / decay:
 *              1 - sqrt(q), 1 - q or (1 + cos(pi q)) / 2    Haegele et al. 2024 (2405.18392) find 1-sqrt the best
 *
 * After the warm-up the factor is scaled to f = min + (1 - min) f, so it never falls below min. Steps count from 0: as
 * in PyTorch and transformers, the first step of a warm-up has rate 0, and the step after the last would have rate min.
 * The rates are those of transformers' get_constant_schedule_with_warmup, get_linear_schedule_with_warmup,
 * get_cosine_with_min_lr_schedule_with_warmup and get_wsd_schedule (whose warm-up starts at min; ours starts at 0).
 *
 *     Schedule s = {.kind = SCHEDULE_COSINE, .steps = 1000, .warmup = schedule_steps(0.03, 1000), .min = 0.1};
 *     lr = peak * schedule_at(&s, step);      // depends on the step alone: a resumed run needs no saved state
 */
#ifndef LLMC_MODEL_SCHEDULE_H
#define LLMC_MODEL_SCHEDULE_H

#include <math.h>
#include <stdint.h>

#define SCHEDULE_CHOICES "constant|linear|cosine|wsd"
typedef enum {
    SCHEDULE_CONSTANT,
    SCHEDULE_LINEAR,
    SCHEDULE_COSINE,
    SCHEDULE_WSD
} ScheduleKind; /* in the order of SCHEDULE_CHOICES */

#define DECAY_CHOICES "1-sqrt|linear|cosine"
typedef enum { DECAY_SQRT, DECAY_LINEAR, DECAY_COSINE } DecayKind; /* in the order of DECAY_CHOICES */

typedef struct Schedule {
    ScheduleKind kind;
    int64_t steps, warmup; /* steps of the whole run and of the warm-up */
    int64_t decay;         /* wsd: steps of the decay */
    DecayKind decay_kind;  /* wsd */
    double min;            /* minimum factor, [0, 1] */
} Schedule;

/* A number of steps. As in transformers' warmup_steps, a value below 1 is a fraction of the run and is rounded up. */
static inline int64_t schedule_steps(double value, int64_t steps) {
    return value < 1 ? (int64_t)ceil(value * (double)steps) : (int64_t)value;
}

static inline double schedule_cosine(double p) { return 0.5 * (1 + cos(3.14159265358979323846 * p)); }

static inline double schedule_decay(DecayKind kind, double q) {
    return kind == DECAY_SQRT ? 1 - sqrt(q) : kind == DECAY_LINEAR ? 1 - q : schedule_cosine(q);
}

/* The factor at `step` >= 0. After the end of the run it stays at its final value. */
static inline double schedule_at(const Schedule *s, int64_t step) {
    if (step < s->warmup) return (double)step / (double)s->warmup;
    const int64_t begin = s->kind == SCHEDULE_WSD ? s->steps - s->decay : s->warmup, length = s->steps - begin;
    const double p = length > 0 ? fmin(fmax((double)(step - begin) / (double)length, 0), 1) : step >= s->steps;
    double f = 1;
    if (s->kind == SCHEDULE_LINEAR) f = 1 - p;
    if (s->kind == SCHEDULE_COSINE) f = schedule_cosine(p);
    if (s->kind == SCHEDULE_WSD) f = schedule_decay(s->decay_kind, p);
    return s->kind == SCHEDULE_CONSTANT ? 1 : s->min + (1 - s->min) * f;
}

#endif
