/* clock.h - monotonic time and calendar time, in seconds.
 *
 *     const double start = clock_seconds();
 *     printf("%.1f s, at %.0f\n", clock_seconds() - start, clock_date());
 *
 * nvcc and g++ compile this header too, so it uses only the common subset of C and C++.
 */
#ifndef LLMC_BASE_CLOCK_H
#define LLMC_BASE_CLOCK_H

#include <time.h>

/* Seconds on a monotonic clock, for durations. Its origin is arbitrary. */
static inline double clock_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds since 1970-01-01 00:00 UTC, for dates. It jumps if the system clock is set while the program runs. */
static inline double clock_date(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
