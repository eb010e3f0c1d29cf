/* run.h - programs that a test signals while they run, and the metrics that they write.
 *
 * models.h has run(), which waits for the program.
 *
 *     pid_t p = run_start("./train_sft ...");                 // its standard streams are $T/.out and $T/.err
 *     run_until(files_path("metrics.jsonl"), 3);              // waits for three steps
 *     kill(p, SIGTERM);
 *     assert_int_equal(run_wait(p, 10), 0);                   // exit status, or 128 + the signal that ended it
 */
#ifndef TESTS_RUN_H
#define TESTS_RUN_H

#include "../llmc/base/error.h"       /* Error, PRINTF_LIKE, xmalloc */
#include "../llmc/cpu/cpu.h"          /* backend_cpu */
#include "../llmc/model/model.h"      /* Model, model_free */
#include "../llmc/model/model_file.h" /* model_load */
#include "../llmc/model/model_load.h" /* ModelFile, model_file_free */
#include "files.h"                    /* files_path, text_of, files_assert_content, files_get */
#include "models.h"                   /* lines_of, json_line_of, models_device */
#include "shell.h"                    /* out, said, run */
#include <time.h>

/* The CUDA backend compiled for the processor, for programs that a test starts: they are built without the sanitizers that
 * the test may have, so its own library .../sanitize/asan/llmc_cuda_host.so becomes .../llmc_cuda_host.so. The test owns
 * the text. */
static inline char *run_host_library(void) {
    const char *named = getenv("LLMC_CUDA_LIBRARY");
    char *path = strdup(named && strstr(named, "llmc_cuda_host.so") ? named : "build/llmc_cuda_host.so");
    assert_non_null(path);
    static const char folders[] = "sanitize/asan/";
    char *sanitized = strstr(path, folders);
    if (sanitized) memmove(sanitized, sanitized + strlen(folders), strlen(sanitized + strlen(folders)) + 1);
    return path;
}

static inline void run_nap(void) { nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL); }

static inline pid_t run_start(const char *command) {
    char line[2000];
    snprintf(line, sizeof line, "exec %s >$T/.out 2>$T/.err", command);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(127);
    }
    return pid;
}

/* Waits for the program and returns its status. After this many seconds it kills the program and fails the test. */
static inline int run_wait(pid_t pid, double seconds) {
    const time_t end = time(NULL) + (time_t)seconds + 1;
    int status;
    while (!waitpid(pid, &status, WNOHANG)) {
        if (time(NULL) > end) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            fail_msg("a program did not end within %g seconds", seconds);
        }
        run_nap();
    }
    free(said), free(out);
    said = text_of(files_path(".err"));
    out = text_of(files_path(".out"));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The lines of a metrics file that are steps, without the records of the beginning and the end of the run. */
static inline char *metrics_text(const char *path) {
    char *text = text_of(path), *to = text;
    for (char *line = text, *next; *line; line = next) {
        const size_t n = strcspn(line, "\n");
        next = line + n + (line[n] == '\n');
        if (!strncmp(line, "{\"record\":", 10)) continue;
        memmove(to, line, (size_t)(next - line));
        to += next - line;
    }
    *to = 0;
    return text;
}

/* Waits until a metrics file has n steps, for two minutes at most. */
static inline void run_until(const char *path, int n) {
    const time_t end = time(NULL) + 121;
    for (int lines = -1; lines < n; run_nap()) {
        if (time(NULL) > end) fail_msg("%s: %d steps after two minutes, expected %d", path, lines, n);
        if (access(path, R_OK)) continue;
        char *text = metrics_text(path);
        lines = lines_of(text);
        free(text);
    }
}

/* Runs a formatted shell command, in which $T is the test's directory, and expects exit status 0. */
PRINTF_LIKE(1, 2) static inline void sh(const char *format, ...) {
    char command[1800];
    va_list args;
    va_start(args, format);
    assert_true(vsnprintf(command, sizeof command, format, args) < (int)sizeof command);
    va_end(args);
    run(0, command);
}

/* The value of a key in step n (from 0; -1: the last) of a metrics file; NaN for null. */
static inline double metric(const char *name, int n, const char *key) {
    char *text = metrics_text(files_path(name));
    json_t *row = json_line_of(text, n < 0 ? lines_of(text) + n : n), *value = json_object_get(row, key);
    if (!value) fail_msg("%s: line %d has no %s", name, n, key);
    const double number = json_is_null(value) ? NAN : json_number_value(value);
    json_decref(row), free(text);
    return number;
}

static inline bool has_metric(const char *name, int n, const char *key) {
    char *text = metrics_text(files_path(name));
    json_t *row = json_line_of(text, n < 0 ? lines_of(text) + n : n);
    const bool has = json_object_get(row, key);
    json_decref(row), free(text);
    return has;
}

static inline int metric_lines(const char *name) {
    char *text = metrics_text(files_path(name));
    const int n = lines_of(text);
    free(text);
    return n;
}

/* Mean of a key over lines [from, to). */
static inline double metric_mean(const char *name, int from, int to, const char *key) {
    double sum = 0;
    for (int i = from; i < to; i++) sum += metric(name, i, key);
    return sum / (to - from);
}

static inline void assert_same_file(const char *a, const char *b) {
    size_t n;
    uint8_t *data = files_get(files_path(a), &n);
    files_assert_content(files_path(b), data, n);
    free(data);
}

/* A run of `steps` steps and one that is resumed from the state after its middle, the last that it writes, end with the
 * same model: whole.ENDING and parts.ENDING, with the metrics whole.jsonl and parts.jsonl. */
static inline void assert_resumes(const char *command, int steps, const char *ending) {
    char whole[40], parts[40];
    snprintf(whole, sizeof whole, "whole.%s", ending);
    snprintf(parts, sizeof parts, "parts.%s", ending);
    sh("rm -f $T/whole.jsonl $T/parts.jsonl");
    sh("%s -x %d -o $T/%s --metrics $T/whole.jsonl --state $T/run.state --save-steps %d", command, steps, whole,
       steps / 2 + 1);
    sh("%s -x %d -o $T/%s --metrics $T/parts.jsonl --resume $T/run.state", command, steps, parts);
    assert_same_file(whole, parts);
}

/* Reads all weights of a model file into memory, to be freed. */
static inline float *weights_of(const char *name, size_t *n) {
    Error e;
    Model m;
    ModelFile f;
    if (!model_load(&m, &f, files_path(name), NULL, false, backend_cpu(), models_device, false, 0, NULL, &e))
        fail_msg("%s", e.text);
    float *w = (float *)xmalloc(m.parameters * sizeof *w);
    m.backend->weights_download(m.device, w, m.weights, m.parameters);
    *n = m.parameters;
    model_free(&m), model_file_free(&f);
    return w;
}

/* The largest difference between two models' weights. */
static inline double weights_gap(const char *a, const char *b) {
    size_t n, k;
    float *x = weights_of(a, &n), *y = weights_of(b, &k);
    double gap = 0;
    assert_int_equal(n, k);
    for (size_t i = 0; i < n; i++) gap = fmax(gap, fabs((double)x[i] - y[i]));
    free(x), free(y);
    return gap;
}

#endif
