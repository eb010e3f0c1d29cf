/* cpu_device.h - the CPU backend's device for a group of tests.
 *
 *     cmocka_run_group_tests_name("head", tests, open_device, close_device);
 */
#ifndef TESTS_CPU_DEVICE_H
#define TESTS_CPU_DEVICE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/error.h"    /* Error */
#include "../llmc/cpu/cpu.h"       /* backend_cpu */
#include "../llmc/model/backend.h" /* Backend, DTYPE_FLOAT32, Device */

static const Backend *B;
static Device *D;

static inline int open_device(void **state) {
    (void)state;
    Error e;
    B = backend_cpu();
    if (B->open(&D, DTYPE_FLOAT32, &e)) return 0;
    print_error("%s\n", e.text);
    return 1;
}

/* For tests of models that are too small for more threads, on a machine that may be busy. */
static inline int open_device_one_thread(void **state) {
    omp_set_num_threads(1);
    return open_device(state);
}

static inline int close_device(void **state) {
    (void)state;
    Error e;
    const bool ok = B->sync(D, &e);
    if (!ok) print_error("%s\n", e.text);
    B->close(D);
    return !ok;
}

#endif
