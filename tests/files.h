/* files.h - fixtures for tests of files: a temporary directory, redirected standard streams, checks of error lines. */
#ifndef TESTS_FILES_H
#define TESTS_FILES_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/error.h" /* Error */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <sys/wait.h>
#include <zstd.h>

static char files_directory[64];

static int files_remove(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    return remove(path);
}

static int files_setup(void **state) {
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    strcpy(files_directory, "/tmp/llmc_test.XXXXXX");
    return !mkdtemp(files_directory) || chmod(files_directory, 0755);
}

static int files_teardown(void **state) {
    (void)state;
    return nftw(files_directory, files_remove, 16, FTW_DEPTH | FTW_PHYS);
}

/* Returns the path of `name` in the test's directory. The string is valid for eight more calls. */
static inline const char *files_path(const char *name) {
    static char ring[8][512];
    static int turn;
    char *path = ring[turn++ % 8];
    snprintf(path, sizeof ring[0], "%s/%s", files_directory, name);
    return path;
}

static inline void files_put(const char *path, const void *data, size_t n) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, n), n);
    close(fd);
}

/* Reads the whole file by plain read(2). The result is malloc'ed. */
static inline uint8_t *files_get(const char *path, size_t *n) {
    struct stat st;
    const int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    uint8_t *data = malloc((size_t)st.st_size + 1);
    *n = 0;
    for (ssize_t got; (got = read(fd, data + *n, (size_t)st.st_size - *n)) > 0;) *n += (size_t)got;
    assert_int_equal(*n, st.st_size);
    close(fd);
    return data;
}

static inline void files_assert_content(const char *path, const void *data, size_t n) {
    size_t got;
    uint8_t *content = files_get(path, &got);
    assert_int_equal(got, n);
    assert_memory_equal(content, data, n);
    free(content);
}

/* The whole file as a string, malloc'ed. */
static inline char *text_of(const char *path) {
    size_t n;
    char *text = (char *)files_get(path, &n);
    text[n] = 0;
    return text;
}

/* The number of places at which a text is in another. */
static inline size_t occurrences(const char *text, const char *part) {
    size_t n = 0;
    for (; (text = strstr(text, part)); text += strlen(part)) n++;
    return n;
}

/* Counts the entries of the test's directory. A leftover temporary file would be one more. */
static inline int files_count(void) {
    int count = 0;
    DIR *d = opendir(files_directory);
    assert_non_null(d);
    for (const struct dirent *entry; (entry = readdir(d));) count += entry->d_name[0] != '.';
    closedir(d);
    return count;
}

/* Checks that the text is one clear line that contains `part`. */
static inline void files_assert_error(const Error *e, const char *part) {
    assert_true(strlen(e->text) > 10);
    assert_null(strchr(e->text, '\n'));
    if (!strstr(e->text, part)) fail_msg("\"%s\" does not hold \"%s\"", e->text, part);
}

/* ---- standard streams ---------------------------------------------------------------------------------------- */

static int files_saved[2] = {-1, -1};
static pid_t files_child;

static inline void files_restore(int stream) {
    dup2(files_saved[stream], stream);
    close(files_saved[stream]);
    if (files_child > 0) waitpid(files_child, NULL, 0);
    files_child = 0;
}

/* Replaces standard input by a pipe that another process fills `piece` bytes at a time. */
static inline void files_feed_stdin(const void *data, size_t n, size_t piece) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    files_child = fork();
    if (!files_child) {
        close(ends[0]);
        for (size_t at = 0; at < n; at += piece)
            if (write(ends[1], (const uint8_t *)data + at, n - at < piece ? n - at : piece) < 0) break;
        _exit(0);
    }
    close(ends[1]);
    files_saved[0] = dup(0);
    dup2(ends[0], 0);
    close(ends[0]);
}

/* Replaces standard output by a pipe that another process copies into `path`. */
static inline void files_catch_stdout(const char *path) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(stdout);
    files_child = fork();
    if (!files_child) {
        uint8_t piece[1000];
        close(ends[1]);
        const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        for (ssize_t got; (got = read(ends[0], piece, sizeof piece)) > 0;)
            if (write(fd, piece, (size_t)got) != got) _exit(1);
        _exit(0);
    }
    close(ends[0]);
    files_saved[1] = dup(1);
    dup2(ends[1], 1);
    close(ends[1]);
}

/* Replaces standard output by a pipe without a reader. */
static inline void files_break_stdout(void) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    fflush(stdout);
    files_saved[1] = dup(1);
    dup2(ends[1], 1);
    close(ends[1]);
}

/* Compresses to one zstd frame with a checksum, by libzstd's one-call interface. The result is malloc'ed. */
static inline uint8_t *files_zstd(const void *data, size_t n, size_t *packed) {
    const size_t bound = ZSTD_compressBound(n);
    uint8_t *out = malloc(bound);
    ZSTD_CCtx *z = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, 1);
    *packed = ZSTD_compress2(z, out, bound, data, n);
    ZSTD_freeCCtx(z);
    assert_false(ZSTD_isError(*packed));
    return out;
}

/* Bytes without a pattern, from a linear congruential generator. */
static inline uint8_t *files_noise(size_t n) {
    uint8_t *data = malloc(n + 1);
    uint32_t x = 12345;
    for (size_t i = 0; i < n; i++) data[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
    return data;
}

/* Checks that a file is refused, with an error that names it, if a byte of it is changed or if it ends there: at each of its first
 * `every` bytes, and then at steps of n / parts. */
static inline void files_refuse_damage(const uint8_t *data, size_t n, size_t every, size_t parts,
                                       bool (*opens)(const char *path, Error *e)) {
    Error e;
    const char *path = files_path("broken");
    uint8_t *broken = (uint8_t *)malloc(n);
    memcpy(broken, data, n);
    for (size_t at = 0; at < n; at += at < every ? 1 : n / parts) {
        broken[at] ^= 64;
        files_put(path, broken, n);
        broken[at] ^= 64;
        assert_false(opens(path, &e));
        files_assert_error(&e, "broken");
        files_put(path, data, at);
        assert_false(opens(path, &e));
        files_assert_error(&e, "broken");
    }
    free(broken);
}

#endif
