/* test_process.c - the child program of llmc/base/process.h: transfers, deadlines, how it ends, and what remains of it. */

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <sys/resource.h>

#include "../llmc/base/clock.h"   /* clock_seconds */
#include "../llmc/base/error.h"   /* Error, xmalloc, xcalloc */
#include "../llmc/base/process.h" /* Process, PROCESS_READ, process_open, process_close, ... */

static int open_files(void) {
    int count = 0;
    for (int i = 0; i < 256; i++) count += fcntl(i, F_GETFD) >= 0;
    return count;
}

/* Writes n bytes to the child and reads until `to` is full. */
static ProcessEvent exchange(Process *p, const char *data, size_t n, char *to, size_t room, double seconds) {
    const double until = clock_seconds() + seconds;
    while (room) {
        size_t moved;
        const ProcessEvent event = process_wait(p, data, n, to, room, until, &moved);
        if (event == PROCESS_READ) {
            to += moved;
            room -= moved;
        } else if (event == PROCESS_WROTE) {
            data += moved;
            n -= moved;
        } else return event;
    }
    return PROCESS_READ;
}

/* Far more than both pipes hold goes to a child that repeats it, and comes back unchanged. */
static void test_large_transfers(void **state) {
    (void)state;
    enum { N = 5000000 };
    Process p;
    Error e;
    char *data = (char *)xmalloc(N), *back = (char *)xmalloc(N);
    const int before = open_files();
    for (int i = 0; i < N; i++) data[i] = (char)((unsigned)i * 7919u >> 3);
    assert_true(process_open(&p, "cat", &e));
    assert_int_equal(exchange(&p, data, N, back, N, 60), PROCESS_READ);
    assert_memory_equal(data, back, N);
    process_close(&p);
    assert_int_equal(p.pid, 0);
    assert_int_equal(open_files(), before);
    free(data), free(back);
}

/* A deadline that passes leaves the child as it is; the next call goes on with it. */
static void test_deadline(void **state) {
    (void)state;
    Process p;
    Error e;
    char answer[3];
    assert_true(process_open(&p, "read x; sleep 0.3; echo $x; sleep 100 & sleep 100", &e));
    const double start = clock_seconds();
    assert_int_equal(exchange(&p, "ab\n", 3, answer, 3, 0.1), PROCESS_LATE);
    assert_true(clock_seconds() - start >= 0.1);
    assert_int_equal(kill(p.pid, 0), 0);
    assert_int_equal(exchange(&p, NULL, 0, answer, 3, 60), PROCESS_READ);
    assert_memory_equal(answer, "ab\n", 3);
    const pid_t group = p.pid;
    process_kill(&p);
    for (int i = 0; i < 1000 && !kill(-group, 0); i++) usleep(10000); /* the grandchild is reaped by init */
    assert_int_equal(kill(-group, 0), -1);
    assert_int_equal(process_kill(&p), -1);
    process_close(&p);
}

static void fails(const char *command, size_t n, const char *message) {
    Process p;
    Error e;
    char *data = (char *)xcalloc(n, 1), answer[16];
    const int before = open_files();
    assert_true(process_open(&p, command, &e));
    assert_int_equal(exchange(&p, data, n, answer, sizeof answer, 60), PROCESS_FAILED);
    assert_false(process_failed(&p, "after a while", &e));
    assert_string_equal(e.text, message);
    assert_int_equal(p.pid, 0);
    assert_int_equal(open_files(), before);
    process_close(&p);
    free(data);
}

static void test_ends(void **state) {
    (void)state;
    fails("exit 3", 0, "ended with exit status 3 after a while, must run until the end of its input");
    fails("/no/such 2>/dev/null", 0,
          "ended with exit status 127 (command not found) after a while, must run until the end of its input");
    fails("echo a; kill -TERM $$", 0, "killed by signal 15 (Terminated) after a while");
    fails("exec >&-; sleep 100", 0, "closed its output after a while but is still running");
    fails("exec <&-; sleep 100", 1000000, "closed its input after a while but is still running");
}

/* Without file descriptors nothing is started and nothing leaks; a zeroed Process can be closed. */
static void test_nothing_is_left_open(void **state) {
    (void)state;
    Process p = {0};
    Error e;
    struct rlimit limit;
    process_close(&p);
    getrlimit(RLIMIT_NOFILE, &limit);
    const rlim_t all = limit.rlim_cur;
    const int before = open_files(), first = dup(0);
    close(first);
    for (int room = 0; room < 6; room++) { /* two pipes take at most 6 at a time */
        limit.rlim_cur = (rlim_t)(first + room);
        setrlimit(RLIMIT_NOFILE, &limit);
        const bool opened = process_open(&p, "cat", &e);
        limit.rlim_cur = all;
        setrlimit(RLIMIT_NOFILE, &limit);
        assert_false(opened);
        assert_string_equal(e.text, "pipe: Too many open files");
        assert_int_equal(open_files(), before);
    }
}

/* A parent that is killed takes the child, and what it started, with it. */
static void test_no_orphans(void **state) {
    (void)state;
    int pipes[2];
    pid_t group[2];
    assert_int_equal(pipe(pipes), 0);
    const pid_t parent = fork();
    assert_true(parent >= 0);
    if (!parent) {
        Process p;
        Error e;
        size_t moved;
        char ready;
        const bool ok = process_open(&p, "trap '' HUP TERM; sleep 873 & echo; sleep 874", &e) &&
                        process_wait(&p, NULL, 0, &ready, 1, clock_seconds() + 60, &moved) == PROCESS_READ;
        const pid_t ids[2] = {ok ? p.pid : 0, p.guard};
        if (write(pipes[1], ids, sizeof ids) != sizeof ids) _exit(1);
        for (;;) pause();
    }
    assert_int_equal(read(pipes[0], group, sizeof group), sizeof group);
    close(pipes[0]), close(pipes[1]);
    assert_true(group[0] > 0);
    assert_int_equal(kill(-group[1], 0), 0);
    kill(parent, SIGKILL);
    waitpid(parent, NULL, 0);
    for (int i = 0; i < 1000 && !kill(-group[1], 0); i++) usleep(10000); /* init reaps them */
    assert_int_equal(kill(-group[1], 0), -1);
    assert_int_equal(kill(group[0], 0), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_large_transfers),      cmocka_unit_test(test_deadline),   cmocka_unit_test(test_ends),
        cmocka_unit_test(test_nothing_is_left_open), cmocka_unit_test(test_no_orphans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
