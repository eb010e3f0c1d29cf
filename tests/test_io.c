/* test_io.c - io.h: round trips, pipes, zstd, atomic writes, and every way in which reading or writing can fail. */
#include "../llmc/base/error.h" /* Error */
#include "../llmc/base/io.h"    /* reader_close, writer_open, reader_open, IO_BUFFER, ... */
#include "files.h"              /* files_path, files_assert_error, files_put, files_assert_content, ... */
#include <sys/resource.h>

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

/* Reads `path` to its end in pieces of various sizes. Returns malloc'ed contents, or NULL on failure. */
static uint8_t *read_all(const char *path, size_t *n, uint64_t *hash, Error *e) {
    static const size_t pieces[] = {1, 7, 4096, IO_BUFFER - 1, IO_BUFFER, 3 * IO_BUFFER + 5};
    Reader r;
    bool failed = false;
    size_t capacity = 1 << 23, got, turn = 0;
    uint8_t *data = malloc(capacity);
    *n = 0;
    if (!reader_open(&r, path, e)) {
        free(data);
        return NULL;
    }
    while ((got = reader_some(&r, data + *n, pieces[turn++ % 6], &failed, e)) > 0) {
        *n += got;
        assert_int_equal(r.position, *n);
        assert_true(*n + 4 * IO_BUFFER < capacity);
    }
    *hash = reader_hash(&r);
    if (failed) { /* the state of failure persists */
        bool again = false;
        Error second;
        assert_int_equal(reader_some(&r, data, 1, &again, &second), 0);
        assert_true(again);
    }
    reader_close(&r);
    if (!failed) return data;
    free(data);
    return NULL;
}

static void assert_reads(const char *path, const uint8_t *expected, size_t n) {
    Error e;
    size_t got;
    uint64_t hash;
    uint8_t *data = read_all(path, &got, &hash, &e);
    if (!data) fail_msg("%s", e.text);
    assert_int_equal(got, n);
    assert_memory_equal(data, expected, n);
    assert_true(hash == XXH3_64bits(expected, n));
    free(data);
}

static void assert_unreadable(const char *path, const char *part) {
    Error e = {""};
    size_t got;
    uint64_t hash;
    assert_null(read_all(path, &got, &hash, &e));
    files_assert_error(&e, part);
}

static bool write_all(const char *path, const uint8_t *data, size_t n, Error *e) {
    static const size_t pieces[] = {1, 100, IO_BUFFER - 1, IO_BUFFER, IO_BUFFER + 1};
    Writer w;
    if (!writer_open(&w, path, e)) return false;
    for (size_t at = 0, turn = 0; at < n; turn++) {
        const size_t piece = n - at < pieces[turn % 5] ? n - at : pieces[turn % 5];
        if (!writer_write(&w, data + at, piece, e)) {
            writer_abort(&w);
            return false;
        }
        at += piece;
    }
    assert_true(writer_hash(&w) == XXH3_64bits(data, n));
    return writer_commit(&w, e);
}

static const size_t sizes[] = {0, 1, 3, 4, 5, 4095, IO_BUFFER - 1, IO_BUFFER, IO_BUFFER + 1, 3000000};

static void round_trips(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Error e;
        size_t packed_bytes, n = sizes[i];
        uint8_t *data = files_noise(n);
        memset(data, 'a', n / 2); /* half of it is compressible */
        const char *plain = files_path("plain"), *packed = files_path("packed.zst");
        assert_true(write_all(plain, data, n, &e));
        files_assert_content(plain, data, n);
        assert_reads(plain, data, n);

        assert_true(write_all(packed, data, n, &e));
        uint8_t *raw = files_get(packed, &packed_bytes), *unpacked = malloc(n + 1);
        assert_int_equal(ZSTD_decompress(unpacked, n, raw, packed_bytes), n); /* one frame, as zstd -d expects */
        assert_memory_equal(unpacked, data, n);
        assert_true(n < 10000 || packed_bytes < n);
        assert_reads(packed, data, n);

        files_feed_stdin(data, n, 1000);
        assert_reads("-", data, n);
        files_restore(0);
        files_feed_stdin(raw, packed_bytes, 333);
        assert_reads("-", data, n);
        files_restore(0);

        files_catch_stdout(plain);
        const bool ok = write_all("-", data, n, &e);
        files_restore(1);
        assert_true(ok);
        files_assert_content(plain, data, n);
        free(raw), free(unpacked), free(data);
    }
}

static void known_hash(void **state) {
    (void)state;
    Error e;
    Reader r;
    files_put(files_path("empty"), "", 0);
    assert_true(reader_open(&r, files_path("empty"), &e));
    /* XXH3-64 of an empty input with seed 0: xxHash's own test vector */
    assert_true(reader_hash(&r) == 0x2d06800538d394c2);
    reader_close(&r);
}

static void exact_reads(void **state) {
    (void)state;
    Error e;
    Reader r;
    uint8_t buffer[16];
    const char *path = files_path("ten");
    files_put(path, "0123456789", 10);
    assert_true(reader_open(&r, path, &e));
    assert_int_equal(reader_left(&r), 10);
    assert_true(reader_read(&r, buffer, 4, "head", &e));
    assert_memory_equal(buffer, "0123", 4);
    assert_int_equal(reader_left(&r), 6);
    assert_true(reader_skip(&r, 2, "gap", &e));
    assert_true(reader_read(&r, buffer, 0, "nothing", &e));
    assert_false(reader_end(&r, &e));
    files_assert_error(&e, "ten: more data follows byte 6, expected the end of the file");
    assert_false(reader_read(&r, buffer, 8, "tail", &e));
    files_assert_error(&e, "ten: tail: needs 8 bytes at byte 7, the file ends at 10");
    assert_true(reader_end(&r, &e));
    assert_int_equal(reader_left(&r), 0);
    assert_false(reader_skip(&r, UINT64_MAX, "rest", &e));
    files_assert_error(&e, "the file ends at 10");
    reader_close(&r);

    const int fd = open(path, O_RDONLY); /* standard input is a file, read from its current offset */
    assert_int_equal(lseek(fd, 3, SEEK_SET), 3);
    files_saved[0] = dup(0);
    dup2(fd, 0);
    close(fd);
    const bool ok = reader_open(&r, "-", &e) && reader_left(&r) == 7 && reader_read(&r, buffer, 7, "all", &e);
    files_restore(0);
    reader_close(&r);
    assert_true(ok);
    assert_memory_equal(buffer, "3456789", 7);

    assert_true(reader_memory(&r, "abc", 3, &e));
    assert_int_equal(reader_left(&r), 3);
    assert_true(reader_read(&r, buffer, 3, "all", &e) && reader_end(&r, &e));
    assert_memory_equal(buffer, "abc", 3);
    reader_close(&r);
    assert_true(reader_memory(&r, NULL, 0, &e) && reader_end(&r, &e));
    reader_close(&r);
}

static void blobs(void **state) {
    (void)state;
    Error e;
    Reader r;
    const size_t n = 3 * IO_PIECE + 17;
    uint8_t *data = files_noise(n), *blob;
    const char *path = files_path("blob");
    files_put(path, data, n);
    for (int pipe = 0; pipe < 2; pipe++) {
        if (pipe) files_feed_stdin(data, n, 50000);
        assert_true(reader_open(&r, pipe ? "-" : path, &e));
        blob = reader_blob(&r, n - 5, "blob", &e);
        assert_non_null(blob);
        assert_memory_equal(blob, data, n - 5);
        assert_int_equal(blob[n - 5], 0);
        free(blob);
        assert_null(reader_blob(&r, UINT64_MAX, "huge", &e)); /* no memory is allocated for bytes that cannot exist */
        files_assert_error(&e, pipe ? "memory" : "the file ends at");
        assert_null(reader_blob(&r, 1 << 30, "large", &e));
        files_assert_error(&e, "large: needs 1073741824 bytes at byte");
        reader_close(&r);
        if (pipe) files_restore(0);
    }
    free(data);
}

static void slurping(void **state) {
    (void)state;
    Error e;
    size_t n;
    const char *path = files_path("text");
    uint8_t *data = files_noise(500000);
    for (int pipe = 0; pipe < 2; pipe++)
        for (int i = 0; i < 4; i++) {
            const size_t limit = (const size_t[]){500000, SIZE_MAX, 499999, 0}[i];
            if (pipe) files_feed_stdin(data, 500000, 4096);
            files_put(path, data, 500000);
            char *text = file_slurp(pipe ? "-" : path, limit, &n, &e);
            if (pipe) files_restore(0);
            if (limit >= 500000) {
                assert_non_null(text);
                assert_int_equal(n, 500000);
                assert_memory_equal(text, data, n);
                assert_int_equal(text[n], 0);
                free(text);
            } else {
                assert_null(text);
                files_assert_error(&e, "is longer than");
            }
        }
    files_put(path, "", 0);
    char *text = file_slurp(path, 0, &n, &e);
    assert_non_null(text);
    assert_int_equal(n, 0);
    free(text);
    text = file_slurp("/proc/self/status", 1 << 20, &n, &e); /* its size is reported as 0 bytes, but it has contents */
    assert_non_null(text);
    assert_true(n > 100);
    free(text);
    assert_null(file_slurp(files_path("absent"), 10, &n, &e));
    files_assert_error(&e, "absent: cannot open: No such file");
    free(data);
}

static void unreadable(void **state) {
    (void)state;
    assert_unreadable(files_path("absent"), "absent: cannot open: No such file or directory");
    assert_unreadable(files_directory, "is a directory, expected a file");
    assert_unreadable("", "cannot open");
    if (access("/proc/self/mem", R_OK) == 0) assert_unreadable("/proc/self/mem", "cannot read: Input/output error");
    const char *path = files_path("secret");
    files_put(path, "x", 1);
    chmod(path, 0);
    if (geteuid() == 0) assert_int_equal(seteuid(65534), 0);
    Error e;
    Reader r;
    const bool opened = reader_open(&r, path, &e);
    if (getuid() == 0) assert_int_equal(seteuid(0), 0);
    assert_false(opened);
    files_assert_error(&e, "secret: cannot open: Permission denied");
}

static void standard_input_that_waits(void **state) {
    (void)state;
    Error e;
    uint8_t *data = files_noise(100000);
    files_feed_stdin(data, 100000, 100);
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    assert_reads("-", data, 100000);
    files_restore(0);
    files_saved[0] = dup(0); /* closed */
    close(0);
    Reader r;
    const bool opened = reader_open(&r, "-", &e);
    files_restore(0);
    assert_false(opened);
    files_assert_error(&e, "standard input: cannot open: Bad file descriptor");
    free(data);
}

/* ---- zstd ---------------------------------------------------------------------------------------------------- */

static void zstd_frames(void **state) {
    (void)state;
    size_t a, b, at = 0;
    const char *path = files_path("frames"); /* recognised by magic number, not by name */
    uint8_t *data = files_noise(300000), *one = files_zstd(data, 200000, &a),
            *two = files_zstd(data + 200000, 100000, &b);
    uint8_t *all = malloc(2 * (a + b) + 100);
    memcpy(all, "\x5e\x2a\x4d\x18\x05\0\0\0hello", 13);
    at = 13; /* a skippable frame first */
    memcpy(all + at, one, a);
    at += a;
    memcpy(all + at, "\x50\x2a\x4d\x18\0\0\0\0", 8);
    at += 8;
    memcpy(all + at, two, b);
    at += b;
    files_put(path, all, at);
    assert_reads(path, data, 300000);
    files_feed_stdin(all, at, 1);
    assert_reads("-", data, 300000);
    files_restore(0);
    memcpy(all + at, "junk!", 5);
    files_put(path, all, at + 5);
    assert_unreadable(path, "zstd stream is damaged after byte 300000");
    free(one), free(two), free(all), free(data);
}

static void zstd_damage(void **state) {
    (void)state;
    Error e;
    size_t n, got;
    uint64_t hash;
    uint8_t *data = files_noise(300);
    memset(data, 'x', 150);
    uint8_t *packed = files_zstd(data, 300, &n);
    const char *path = files_path("damaged.zst");
    for (size_t cut = 1; cut < n; cut++) {
        files_put(path, packed, cut);
        if (cut >= 4) assert_unreadable(path, "zstd stream is truncated after byte");
    }
    for (size_t at = 4; at < n; at++)
        for (int bit = 0; bit < 8; bit++) {
            packed[at] ^= (uint8_t)(1 << bit);
            files_put(path, packed, n);
            packed[at] ^= (uint8_t)(1 << bit);
            uint8_t *read = read_all(path, &got, &hash, &e);
            if (read) /* an unused bit of the format; the data must still be right */
                assert_true(got == 300 && !memcmp(read, data, got));
            else files_assert_error(&e, "zstd stream is");
            free(read);
        }
    free(packed), free(data);
}

/* reader_end() verifies the checksum after the content even if the content itself was read whole. */
static void zstd_checksum(void **state) {
    (void)state;
    Error e;
    Reader r;
    size_t n;
    uint8_t *data = files_noise(300), *packed = files_zstd(data, 300, &n), copy[300];
    packed[n - 1] ^= 1;
    assert_true(reader_memory(&r, packed, n, &e));
    assert_int_equal(reader_left(&r), -1);
    assert_true(reader_read(&r, copy, 200, "content", &e));
    bool ok = reader_read(&r, copy, 100, "content", &e);
    ok = ok && reader_end(&r, &e);
    assert_false(ok);
    files_assert_error(&e, "memory: zstd stream is damaged");
    reader_close(&r);
    free(packed), free(data);
}

/* A compressed stream of more than a thousand times its size ends at the limit, with a line that names the way out. */
static void zstd_bomb_limit(void **state) {
    (void)state;
    Error e;
    Writer w;
    Reader r;
    static uint8_t zeros[IO_PIECE];
    assert_true(writer_open(&w, files_path("large.zst"), &e));
    for (int i = 0; i < 300; i++) assert_true(writer_write(&w, zeros, sizeof zeros, &e));
    assert_true(writer_commit(&w, &e));
    assert_true(reader_open(&r, files_path("large.zst"), &e));
    assert_false(reader_skip(&r, 300 << 20, "all", &e));
    files_assert_error(&e, "its content is larger than 268435456 bytes and than 1000 times the compressed stream");
    assert_int_equal(r.position, 256 << 20);
    reader_close(&r);
    setenv("LLMC_DECOMPRESS_LIMIT", "400000000", 1);
    assert_true(reader_open(&r, files_path("large.zst"), &e));
    assert_true(reader_skip(&r, 300 << 20, "all", &e) && reader_end(&r, &e));
    reader_close(&r);
    setenv("LLMC_DECOMPRESS_LIMIT", "1000000", 1);
    assert_true(reader_open(&r, files_path("large.zst"), &e));
    assert_false(reader_skip(&r, 300 << 20, "all", &e));
    files_assert_error(&e, "its content is larger than 1000000 bytes");
    reader_close(&r);
    setenv("LLMC_DECOMPRESS_LIMIT", "1g", 1);
    assert_true(reader_open(&r, files_path("large.zst"), &e));
    assert_false(reader_skip(&r, 300 << 20, "all", &e));
    files_assert_error(&e, "LLMC_DECOMPRESS_LIMIT: '1g' is not a number of bytes");
    reader_close(&r);
    setenv("LLMC_DECOMPRESS_LIMIT", "1000000", 1);
    uint8_t *noise = files_noise(3000000); /* content that does not shrink has no limit */
    assert_true(write_all(files_path("noise.zst"), noise, 3000000, &e));
    assert_true(reader_open(&r, files_path("noise.zst"), &e));
    assert_true(reader_skip(&r, 3000000, "all", &e) && reader_end(&r, &e));
    reader_close(&r);
    unsetenv("LLMC_DECOMPRESS_LIMIT");
    unlink(files_path("large.zst")), unlink(files_path("noise.zst"));
    free(noise);
}

static void zstd_bomb(void **state) {
    (void)state;
    Error e;
    Writer w;
    Reader r;
    const char *path = files_path("bomb.zst");
    static uint8_t zeros[IO_PIECE];
    assert_true(writer_open(&w, path, &e));
    for (int i = 0; i < 256; i++) assert_true(writer_write(&w, zeros, sizeof zeros, &e));
    assert_true(writer_commit(&w, &e));
    struct rusage before, after;
    struct stat st;
    stat(path, &st);
    assert_true(st.st_size < 100000);
    getrusage(RUSAGE_SELF, &before);
    assert_true(reader_open(&r, path, &e));
    assert_true(reader_read(&r, zeros, 1000, "a little", &e));
    assert_int_equal(r.position, 1000);
    assert_true(reader_skip(&r, 255 << 20, "most", &e));
    assert_null(reader_blob(&r, (uint64_t)1 << 62, "absurd", &e));
    files_assert_error(&e, "absurd: 4611686018427387904 bytes at byte");
    reader_close(&r);
    size_t n;
    assert_null(file_slurp(path, 1 << 20, &n, &e));
    files_assert_error(&e, "is longer than 1048576 bytes");
    getrusage(RUSAGE_SELF, &after);
#ifndef SANITIZED
    assert_true(after.ru_maxrss - before.ru_maxrss < 32 << 10); /* KiB */
#endif
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

static void atomic_writes(void **state) {
    (void)state;
    Error e;
    Writer w;
    const char *path = files_path("model.bin");
    files_put(path, "earlier", 7);
    const int files = files_count();
    assert_true(writer_open(&w, path, &e));
    assert_true(writer_write(&w, "later", 5, &e));
    files_assert_content(path, "earlier", 7); /* nothing is visible before the commit */
    assert_int_equal(files_count(), files + 1);
    assert_int_equal(access(w.temporary, F_OK), 0);
    writer_abort(&w);
    assert_int_equal(files_count(), files);
    files_assert_content(path, "earlier", 7);
    writer_abort(&w); /* harmless */

    assert_true(writer_open(&w, path, &e));
    assert_true(writer_write(&w, "later", 5, &e));
    assert_true(writer_commit(&w, &e));
    assert_int_equal(files_count(), files);
    files_assert_content(path, "later", 5);
    writer_abort(&w);
    files_assert_content(path, "later", 5);
}

/* A temporary file whose process has ended is removed by the next writer of its name; one that is being written is not,
 * and neither are files of other names. */
static void leftovers(void **state) {
    (void)state;
    Error e;
    Writer living, w;
    const char *path = files_path("left.bin");
    assert_true(writer_open(&living, path, &e));
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        Writer dead;
        const bool ok = writer_open(&dead, path, &e) && writer_write(&dead, "half", 4, &e);
        _exit(ok && dead.temporary ? 0 : 1);
    }
    int status;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    const int files = files_count();
    files_put(files_path("left.bin.abcdef.tmp"), "a user's", 8);
    files_put(files_path("left.binary.llmc-abcdef.tmp"), "another", 7);
    files_put(files_path("left.bin.state.llmc-abcdef.tmp"), "of the state", 12);
    assert_true(writer_open(&w, path, &e));
    assert_int_equal(files_count(), files + 2); /* + 3, - 2, + 1 */
    assert_int_equal(access(living.temporary, F_OK), 0);
    assert_int_equal(access(files_path("left.bin.abcdef.tmp"), F_OK), 0);
    assert_int_equal(access(files_path("left.binary.llmc-abcdef.tmp"), F_OK), 0);
    assert_true(writer_write(&living, "whole", 5, &e) && writer_commit(&living, &e));
    files_assert_content(path, "whole", 5);
    writer_abort(&w);
    unlink(files_path("left.bin.abcdef.tmp")), unlink(files_path("left.binary.llmc-abcdef.tmp"));
}

/* An output that is a link to a file that does not exist yet creates that file, as open(2) does. */
static void dangling_links(void **state) {
    (void)state;
    Error e;
    struct stat about;
    const char *link = files_path("link");
    assert_int_equal(mkdir(files_path("there"), 0755), 0);
    assert_int_equal(symlink("there/second", link), 0);
    assert_int_equal(symlink("target", files_path("there/second")), 0);
    assert_true(write_all(link, (const uint8_t *)"data", 4, &e));
    assert_int_equal(lstat(link, &about), 0);
    assert_true(S_ISLNK(about.st_mode));
    files_assert_content(files_path("there/target"), "data", 4);
    unlink(link), symlink("link", link);
    assert_false(write_all(link, (const uint8_t *)"data", 4, &e));
    files_assert_error(&e, "Too many levels of symbolic links");
    unlink(link), symlink("no/where", link);
    assert_false(write_all(link, (const uint8_t *)"data", 4, &e));
    files_assert_error(&e, "cannot create a temporary file in its directory: No such file or directory");
    unlink(link);
}

static void full_disk(void **state) {
    (void)state;
    Error e;
    uint8_t *data = files_noise(400000);
    struct rlimit old, small = {100000, RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN); /* then a write beyond the limit fails as on a full disk */
    for (int packed = 0; packed < 2; packed++)
        for (int late = 0; late < 2; late++) {
            const char *path = files_path(packed ? "full.zst" : "full.bin");
            files_put(path, "earlier", 7);
            const int files = files_count();
            setrlimit(RLIMIT_FSIZE, &small);
            /* only at the commit, because everything is still in the buffer */
            const bool ok = write_all(path, data, late ? 110000 : 400000, &e);
            setrlimit(RLIMIT_FSIZE, &old);
            assert_false(ok);
            files_assert_error(&e, packed ? "full.zst: cannot write: File too large" : "full.bin: cannot write: File");
            assert_int_equal(files_count(), files);
            files_assert_content(path, "earlier", 7);
        }
    assert_false(write_all("/dev/full", data, 400000, &e));
    files_assert_error(&e, "/dev/full: cannot write: No space left on device");
    assert_false(write_all("/dev/full", data, 10, &e));
    files_assert_error(&e, "/dev/full: cannot write: No space left on device");

    Writer w;
    assert_true(writer_open(&w, "/dev/full", &e));
    assert_false(writer_write(&w, data, 400000, &e));
    assert_false(writer_write(&w, data, 1, &e)); /* a failed writer keeps failing */
    files_assert_error(&e, "/dev/full: cannot write: an earlier write failed");
    assert_false(writer_commit(&w, &e));
    struct stat st;
    assert_int_equal(stat("/dev/full", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    free(data);
}

static void devices_and_fifos(void **state) {
    (void)state;
    Error e;
    struct stat st;
    uint8_t *data = files_noise(100000);
    assert_true(write_all("/dev/null", data, 100000, &e));
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    const char *path = files_path("fifo"), *copy = files_path("copy");
    assert_int_equal(mkfifo(path, 0600), 0);
    const pid_t child = fork();
    if (!child) {
        size_t n;
        char *text = file_slurp(path, SIZE_MAX - 1, &n, &e);
        if (!text || !write_all(copy, (uint8_t *)text, n, &e)) _exit(1);
        _exit(0);
    }
    assert_true(write_all(path, data, 100000, &e));
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    files_assert_content(copy, data, 100000);
    assert_int_equal(stat(path, &st), 0);
    assert_true(S_ISFIFO(st.st_mode));
    free(data);
}

static void closed_standard_output(void **state) {
    (void)state;
    Error early, late;
    uint8_t *data = files_noise(400000);
    files_break_stdout();
    const bool ok_early = write_all("-", data, 400000, &early), ok_late = write_all("-", data, 10, &late);
    files_restore(1);
    assert_false(ok_early);
    files_assert_error(&early, "standard output: cannot write: Broken pipe");
    assert_false(ok_late);
    files_assert_error(&late, "standard output: cannot write: Broken pipe");
    fflush(stdout);
    files_saved[1] = dup(1);
    close(1);
    const bool ok = write_all("-", data, 10, &late);
    files_restore(1);
    assert_false(ok);
    files_assert_error(&late, "standard output: cannot write: Bad file descriptor");
    free(data);
}

static void unwritable(void **state) {
    (void)state;
    Error e;
    Writer w;
    const int files = files_count();
    assert_false(writer_open(&w, files_directory, &e));
    files_assert_error(&e, "is a directory, expected a file");
    assert_false(writer_open(&w, files_path("absent/model.bin"), &e));
    files_assert_error(&e,
                       "absent/model.bin: cannot create a temporary file in its directory: No such file or directory");
    assert_false(writer_open(&w, "", &e));
    files_assert_error(&e, "name of an output file is empty");
    assert_int_equal(files_count(), files);

    const char *directory = files_path("locked"), *inside = files_path("locked/model.bin");
    const char *guarded = files_path("guarded");
    assert_int_equal(mkdir(directory, 0755), 0);
    files_put(inside, "earlier", 7);
    files_put(guarded, "earlier", 7);
    chmod(guarded, 0444);
    chmod(inside, 0666);
    chmod(directory, 0555);
    if (geteuid() == 0) assert_int_equal(seteuid(65534), 0);
    const bool opened = writer_open(&w, inside, &e);
    Error second;
    const bool opened_guarded = writer_open(&w, guarded, &second);
    if (getuid() == 0) assert_int_equal(seteuid(0), 0);
    chmod(directory, 0755);
    assert_false(opened);
    files_assert_error(&e, "locked/model.bin: cannot create a temporary file in its directory: Permission denied");
    assert_false(opened_guarded);
    files_assert_error(&second, "guarded: cannot write: Permission denied");
    files_assert_content(inside, "earlier", 7);
    files_assert_content(guarded, "earlier", 7);
}

static void names_and_permissions(void **state) {
    (void)state;
    Error e;
    struct stat st;
    const uint8_t data[4] = "data";
    const mode_t mask = umask(027);
    assert_true(write_all(files_path("fresh"), data, 4, &e));
    umask(mask);
    assert_int_equal(stat(files_path("fresh"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    chmod(files_path("fresh"), 0604);
    assert_true(write_all(files_path("fresh"), data, 3, &e));
    assert_int_equal(stat(files_path("fresh"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0604);

    assert_int_equal(symlink("fresh", files_path("link")), 0); /* a symbolic link is kept and its target is replaced */
    assert_true(write_all(files_path("link"), data, 2, &e));
    assert_int_equal(lstat(files_path("link"), &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    files_assert_content(files_path("fresh"), "da", 2);

    char longest[256];
    memset(longest, 'n', 255);
    longest[255] = 0;
    assert_true(write_all(files_path(longest), data, 4, &e));
    files_assert_content(files_path(longest), "data", 4);
    assert_int_equal(unlink(files_path(longest)), 0);

    char here[4096];
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(files_directory), 0); /* a name without a directory */
    assert_true(write_all("bare", data, 4, &e));
    assert_int_equal(chdir(here), 0);
    files_assert_content(files_path("bare"), "data", 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trips),
        cmocka_unit_test(known_hash),
        cmocka_unit_test(exact_reads),
        cmocka_unit_test(blobs),
        cmocka_unit_test(slurping),
        cmocka_unit_test(unreadable),
        cmocka_unit_test(standard_input_that_waits),
        cmocka_unit_test(zstd_frames),
        cmocka_unit_test(zstd_damage),
        cmocka_unit_test(zstd_checksum),
        cmocka_unit_test(zstd_bomb),
        cmocka_unit_test(zstd_bomb_limit),
        cmocka_unit_test(atomic_writes),
        cmocka_unit_test(leftovers),
        cmocka_unit_test(dangling_links),
        cmocka_unit_test(full_disk),
        cmocka_unit_test(devices_and_fifos),
        cmocka_unit_test(closed_standard_output),
        cmocka_unit_test(unwritable),
        cmocka_unit_test(names_and_permissions),
    };
    return cmocka_run_group_tests_name("io", tests, files_setup, files_teardown);
}
