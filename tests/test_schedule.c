/* test_schedule.c - schedule.h against transformers' schedules (golden/schedule.txt, written by
 * dev/golden/golden_schedule.py). */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/options.h"   /* option_choice_index */
#include "../llmc/model/schedule.h" /* schedule_at, schedule_steps, SCHEDULE_CONSTANT, Schedule, ... */
#include "golden.h"                 /* golden, Golden, golden_count, golden_free, ... */

static void test_golden(void **state) {
    (void)state;
    FILE *f = golden_open("schedule.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g), cases++) {
        const double *config = golden(&g, "config"), *factor = golden(&g, "factor");
        const int decay = option_choice_index(DECAY_CHOICES, g.name);
        const Schedule s = {.kind = (ScheduleKind)option_choice_index(SCHEDULE_CHOICES, g.family),
                            .steps = (int64_t)config[0],
                            .warmup = (int64_t)config[1],
                            .decay = (int64_t)config[2],
                            .decay_kind = (DecayKind)(decay < 0 ? 0 : decay),
                            .min = config[3]};
        for (int i = 0; i < golden_count(&g, "factor"); i++) {
            if (i >= s.steps) break; /* they differ beyond the end, where transformers' cosine rises again */
            if (fabs(schedule_at(&s, i) - factor[i]) > 1e-12)
                fail_msg("%s %s, %g steps, warm-up %g: step %d: %.15g is not %.15g", g.family, g.name, config[0],
                         config[1], i, schedule_at(&s, i), factor[i]);
        }
    }
    fclose(f);
    assert_int_equal(cases, 32);
}

static void test_bounds(void **state) {
    (void)state;
    for (int kind = SCHEDULE_CONSTANT; kind <= SCHEDULE_WSD; kind++)
        for (int64_t warmup = 0; warmup <= 12; warmup += 3)
            for (int64_t decay = 0; decay <= 12 - warmup; decay += 4) {
                const Schedule s = {
                    .kind = (ScheduleKind)kind, .steps = 12, .warmup = warmup, .decay = decay, .min = 0.25};
                for (int64_t step = warmup; step < 40; step++) {
                    const double factor = schedule_at(&s, step);
                    assert_true(factor >= 0.25 && factor <= 1);
                    if (step > warmup) assert_true(factor <= schedule_at(&s, step - 1));
                }
                if (kind != SCHEDULE_CONSTANT) assert_true(fabs(schedule_at(&s, 1000) - 0.25) < 1e-15);
            }
}

static void test_steps(void **state) {
    (void)state;
    assert_int_equal(schedule_steps(0, 1000), 0);
    assert_int_equal(schedule_steps(0.03, 1000), 30);
    assert_int_equal(schedule_steps(0.03, 10), 1);
    assert_int_equal(schedule_steps(1, 1000), 1);
    assert_int_equal(schedule_steps(250, 1000), 250);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
