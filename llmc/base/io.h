/* io.h - reader and writer of files, pipes and memory, used for all file formats of this project.
 *
 * Reader: "-" is standard input. A zstd or gzip stream from a file or a pipe is recognised by its magic number and
 * decompressed on the fly, over any number of frames or members. Only as much is decompressed as the caller requests,
 * zstd's windows above its limit of 128 MiB are rejected, and so is a stream whose content is larger than both 256 MiB
 * and 1000 times its own size, so a small file cannot fill the memory. The environment variable LLMC_DECOMPRESS_LIMIT
 * sets another limit than 256 MiB, in bytes. All bytes delivered are hashed (XXH3, 64 bits) for checksums. A reader of
 * an uncompressed file can continue on a mapping of it (map.h) and then lends its bytes instead of copying them.
 *
 * Writer: "-" is standard output. A regular file is written under a temporary name in the same directory
 * (NAME.llmc-XXXXXX.tmp) and renamed only in writer_commit(), after fsync, so a failure at any moment leaves an
 * existing file unchanged. A symbolic link is followed, also if its target does not exist. A device or fifo (/dev/null,
 * /dev/full) is written directly. A file whose path ends in .zst is compressed, with zstd's content checksum.
 *
 * A process that is killed leaves its temporary files. The next writer of NAME removes them: a living process holds a
 * lock (flock) on each of its own.
 *
 *     Reader r;
 *     if (!reader_open(&r, path, e)) return false;
 *     bool ok = reader_read(&r, header, sizeof header, "header", e) && reader_end(&r, e);
 *     reader_close(&r);
 *
 *     Writer w;
 *     if (!writer_open(&w, path, e)) return false;
 *     if (writer_write(&w, data, n, e) && writer_commit(&w, e)) return true;
 *     writer_abort(&w);                                     // also safe after a failure or a commit
 *     return false;
 *
 * Programs that write to pipes ignore SIGPIPE; a closed pipe is then reported as a failed write. Numbers in files are
 * little-endian, which is the byte order of all supported machines.
 */
#ifndef LLMC_BASE_IO_H
#define LLMC_BASE_IO_H

#define XXH_INLINE_ALL

#include "error.h"     /* Error, error_set, xmalloc, xstrdup, ... */
#include "file_kind.h" /* FILE_KIND_BYTES, FILE_KIND_TEXT, file_kind_any, magic_name */
#include "map.h"       /* Mapping, mapping_forget, mapping_new */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "file formats are read and written as little-endian memory");

enum { IO_BUFFER = 1 << 17, IO_PIECE = 1 << 20 }; /* bytes: size of the buffer; maximum of one read or write call */

/* Limits of a compressed stream's content: bytes; times its own size. */
enum { IO_EXPANDED = 1 << 28, IO_RATIO = 1000 };

/* XXH3, 64 bits, of n bytes. GCC 12 leaves the upper halves of vector registers in use after XXH3 of more than 240
 * bytes; the SSE instructions of libraries, such as those of PCRE2, are slow until they are cleared. */
static inline uint64_t io_hash(const void *data, size_t n, uint64_t seed) {
    const uint64_t hash = XXH3_64bits_withSeed(data, n, seed);
#ifdef __AVX__
    __builtin_ia32_vzeroupper();
#endif
    return hash;
}

/* ---- reading ------------------------------------------------------------------------------------------------- */

typedef struct Reader {
    char *name; /* for messages */
    int fd;     /* -1: memory */
    bool close_fd;
    bool drained; /* the file has no more bytes than those in `in` */
    bool broken;  /* a read has failed; every later read fails too */
    uint8_t *buffer;
    const uint8_t *in; /* bytes [at, end) are read from the file but not yet delivered */
    size_t at, end;
    int64_t unread;  /* bytes left in an uncompressed regular file after those in `in`; -1 if unknown */
    bool from_start; /* a regular file that is read from its first byte on */
    Mapping *map;    /* of reader_map(), or NULL */
    ZSTD_DStream *zstd;
    z_stream *gzip;                 /* at most one of the two is not NULL */
    bool in_frame;                  /* inside a zstd frame or a gzip member */
    uint8_t first[FILE_KIND_BYTES]; /* the first bytes that were delivered, for messages */
    uint8_t peeked[16];             /* bytes [peeked_at, peeked_end) come before those of `in` */
    size_t peeked_at, peeked_end;
    uint64_t position; /* bytes delivered */
    uint64_t packed;   /* bytes of a compressed stream read so far */
    XXH3_state_t *hash;
} Reader;

static inline void reader_close(Reader *r) {
    if (r->close_fd) close(r->fd);
    ZSTD_freeDStream(r->zstd);
    if (r->gzip) inflateEnd(r->gzip);
    free(r->gzip);
    XXH3_freeState(r->hash);
    free(r->buffer);
    free(r->name);
    *r = (Reader){.fd = -1};
}

/* read(2) that retries after signals and waits on non-blocking descriptors. Returns the number of bytes, 0 at the end,
 * -1 on an error. */
static inline ssize_t reader_raw(Reader *r, void *dst, size_t n, Error *e) {
    if (n > IO_PIECE) n = IO_PIECE;
    for (;;) {
        const ssize_t got = read(r->fd, dst, n);
        if (got > 0 && r->unread >= 0) r->unread = r->unread > got ? r->unread - got : 0;
        if (got == 0) r->drained = true;
        if (got >= 0) return got;
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
            struct pollfd wait = {.fd = r->fd, .events = POLLIN};
            poll(&wait, 1, -1);
        } else if (errno != EINTR) {
            error_set(e, "%s: cannot read: %s", r->name, strerror(errno));
            return -1;
        }
    }
}

/* Inspects the first bytes of a new stream and sets up the decompressor of a zstd or gzip stream. */
static inline bool reader_begin(Reader *r, Error *e) {
    r->hash = (XXH3_state_t *)checked_object(XXH3_createState(), "the state of a hash");
    XXH3_64bits_reset(r->hash);
    if (r->fd >= 0) {
        r->buffer = (uint8_t *)xmalloc(IO_BUFFER);
        r->in = r->buffer;
        while (r->end < 4 && !r->drained) {
            const ssize_t got = reader_raw(r, r->buffer + r->end, IO_BUFFER - r->end, e);
            if (got < 0) return false;
            r->end += (size_t)got;
        }
    }
    if (r->end < 4) return true;
    uint32_t magic;
    memcpy(&magic, r->in, 4);
    if (magic == ZSTD_MAGICNUMBER || (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START) {
        r->zstd = (ZSTD_DStream *)checked_object(ZSTD_createDStream(), "a zstd decompressor");
        r->unread = -1;
    } else if ((magic & 0xFFFFFF) == 0x088B1F) {
        r->gzip = (z_stream *)xcalloc(1, sizeof *r->gzip);
        r->unread = -1;
        if (inflateInit2(r->gzip, 15 + 16) != Z_OK)
            return error_set(e, "%s: cannot start the gzip decompressor", r->name);
    }
    return true;
}

/* Opens `path` for reading; "-" is standard input. On failure nothing stays open. */
static inline bool reader_open(Reader *r, const char *path, Error *e) {
    const bool standard = !strcmp(path, "-");
    *r = (Reader){.name = xstrdup(standard ? "standard input" : path), .unread = -1};
    r->fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    r->close_fd = !standard && r->fd >= 0;
    struct stat st;
    if (r->fd < 0 || fstat(r->fd, &st) < 0) error_set(e, "%s: cannot open: %s", r->name, strerror(errno));
    else if (S_ISDIR(st.st_mode)) error_set(e, "%s: is a directory, expected a file", r->name);
    else {
        if (S_ISREG(st.st_mode)) {
            const off_t start = lseek(r->fd, 0, SEEK_CUR);
            if (start >= 0) r->unread = st.st_size > start ? st.st_size - start : 0;
            r->from_start = start == 0;
        }
        if (reader_begin(r, e)) return true;
    }
    reader_close(r);
    return false;
}

/* Reads from memory, which must outlive the reader, as if it were a file. */
static inline bool reader_memory(Reader *r, const void *data, size_t n, Error *e) {
    *r = (Reader){.name = xstrdup("memory"), .fd = -1, .drained = true, .in = (const uint8_t *)data, .end = n};
    if (reader_begin(r, e)) return true;
    reader_close(r);
    return false;
}

/* Returns the number of bytes left if the source is an uncompressed regular file or memory, else -1. */
static inline int64_t reader_left(const Reader *r) {
    if (r->unread < 0 || r->zstd || r->gzip) return -1;
    return r->unread + (int64_t)(r->end - r->at) + (int64_t)(r->peeked_end - r->peeked_at);
}

/* XXH3-64 of all (decompressed) bytes delivered so far. */
static inline uint64_t reader_hash(const Reader *r) { return XXH3_64bits_digest(r->hash); }

/* Checks that a compressed stream does not expand without bound. more: bytes that are about to be delivered. */
static inline bool reader_expands(const Reader *r, uint64_t more, Error *e) {
    const uint64_t content = r->position + (r->peeked_end - r->peeked_at) + more;
    if (content / IO_RATIO <= r->packed) return true;
    const char *given = getenv("LLMC_DECOMPRESS_LIMIT");
    if (given && given[strspn(given, "0123456789")])
        return error_set(e, "LLMC_DECOMPRESS_LIMIT: '%.40s' is not a number of bytes", given);
    const uint64_t limit = given && *given ? strtoull(given, NULL, 10) : IO_EXPANDED;
    return content <= limit ||
           error_set(e,
                     "%s: its content is larger than %llu bytes and than %d times the compressed stream; if it is "
                     "meant to be, decompress it first or set LLMC_DECOMPRESS_LIMIT to a number of bytes",
                     r->name, (unsigned long long)limit, IO_RATIO);
}

/* Reads more of a compressed stream into `in` if that is empty. */
static inline bool reader_refill(Reader *r, Error *e) {
    if (r->at < r->end || r->drained) return true;
    const ssize_t got = reader_raw(r, r->buffer, IO_BUFFER, e);
    if (got < 0) return false;
    r->at = 0;
    r->end = (size_t)got;
    return true;
}

/* Sets the error of a compressed stream that is damaged. */
static inline size_t reader_damaged(const Reader *r, const char *format, const char *why, bool *failed, Error *e) {
    *failed = true;
    error_set(e, "%s: %s stream is %s after byte %llu of its content%s%s", r->name, format,
              *why ? "damaged" : "truncated", (unsigned long long)r->position, *why ? ": " : "", why);
    return 0;
}

/* Decompresses up to n bytes of gzip to dst. Returns the number of bytes, 0 at the end. */
static inline size_t reader_inflate(Reader *r, void *dst, size_t n, bool *failed, Error *e) {
    z_stream *z = r->gzip;
    z->next_out = (Bytef *)dst;
    z->avail_out = (uInt)n;
    while (z->avail_out == n) {
        if (!reader_refill(r, e)) {
            *failed = true;
            return 0;
        }
        if (r->at == r->end) return r->in_frame ? reader_damaged(r, "gzip", "", failed, e) : 0;
        if (!r->in_frame && r->packed && !r->in[r->at]) { /* zeros may follow the last member, as on tapes */
            r->at++;
            continue;
        }
        r->in_frame = true;
        z->next_in = (Bytef *)r->in + r->at;
        z->avail_in = (uInt)(r->end - r->at);
        const int result = inflate(z, Z_NO_FLUSH);
        r->packed += r->end - z->avail_in - r->at;
        r->at = r->end - z->avail_in;
        if (result == Z_STREAM_END) {
            r->in_frame = false;
            inflateReset(z);
        } else if (result != Z_OK && result != Z_BUF_ERROR)
            return reader_damaged(r, "gzip", z->msg ? z->msg : "it cannot be decompressed", failed, e);
    }
    if (reader_expands(r, n - z->avail_out, e)) return n - z->avail_out;
    *failed = true;
    return 0;
}

/* Decompresses up to n bytes of zstd to dst. Returns the number of bytes, 0 at the end. */
static inline size_t reader_decompress(Reader *r, void *dst, size_t n, bool *failed, Error *e) {
    ZSTD_outBuffer out = {dst, n, 0};
    while (!out.pos) {
        if (!reader_refill(r, e)) {
            *failed = true;
            return 0;
        }
        const bool starved = r->at == r->end; /* end of the file: only zstd's internal buffer is left */
        if (starved && !r->in_frame) return 0;
        ZSTD_inBuffer in = {r->in, r->end, r->at};
        const size_t hint = ZSTD_decompressStream(r->zstd, &out, &in);
        r->packed += in.pos - r->at;
        r->at = in.pos;
        if (ZSTD_isError(hint)) return reader_damaged(r, "zstd", ZSTD_getErrorName(hint), failed, e);
        r->in_frame = hint != 0;
        if (starved && !out.pos && r->in_frame) return reader_damaged(r, "zstd", "", failed, e);
    }
    if (reader_expands(r, out.pos, e)) return out.pos;
    *failed = true;
    return 0;
}

/* Fetches between 1 and n bytes from the source. Returns the number, 0 at the end or if n is 0. On failure, sets *failed
 * to true and returns 0; otherwise leaves *failed unchanged. */
static inline size_t reader_fetch(Reader *r, void *dst, size_t n, bool *failed, Error *e) {
    size_t got = 0;
    bool bad = r->broken;
    if (bad) error_set(e, "%s: an earlier read failed", r->name);
    if (!n || bad) {
    } else if (r->zstd) got = reader_decompress(r, dst, n < IO_PIECE ? n : IO_PIECE, &bad, e);
    else if (r->gzip) got = reader_inflate(r, dst, n < IO_PIECE ? n : IO_PIECE, &bad, e);
    else {
        const bool direct = n >= IO_BUFFER; /* large reads bypass the buffer */
        if (r->at == r->end && !r->drained) {
            const ssize_t raw = reader_raw(r, direct ? dst : r->buffer, direct ? n : IO_BUFFER, e);
            bad = raw < 0;
            if (!bad && direct) got = (size_t)raw;
            if (!bad && !direct) {
                r->at = 0;
                r->end = (size_t)raw;
            }
        }
        if (!got && r->at < r->end) {
            got = r->end - r->at < n ? r->end - r->at : n;
            memcpy(dst, r->in + r->at, got);
            r->at += got;
        }
    }
    if (bad) *failed = r->broken = true;
    return got;
}

/* Copies the next n bytes, at most 16, without delivering them. Returns their number, which is smaller at the end of the
 * stream and after a failure, which sets *failed. May be called once, before the first read. */
static inline size_t reader_peek(Reader *r, void *dst, size_t n, bool *failed, Error *e) {
    while (r->peeked_end < n) {
        const size_t got = reader_fetch(r, r->peeked + r->peeked_end, n - r->peeked_end, failed, e);
        if (!got) break;
        r->peeked_end += got;
    }
    memcpy(dst, r->peeked, r->peeked_end);
    return r->peeked_end;
}

/* Reads between 1 and n bytes, as many as are available. Returns the number, 0 at the end or if n is 0. On failure,
 * sets *failed to true and returns 0; otherwise leaves *failed unchanged. */
static inline size_t reader_some(Reader *r, void *dst, size_t n, bool *failed, Error *e) {
    size_t got = r->peeked_end - r->peeked_at;
    if (got && n && !r->broken) {
        if (got > n) got = n;
        memcpy(dst, r->peeked + r->peeked_at, got);
        r->peeked_at += got;
    } else got = reader_fetch(r, dst, n, failed, e);
    if (got) XXH3_64bits_update(r->hash, dst, got);
    for (size_t i = 0; i < got && r->position + i < FILE_KIND_BYTES; i++)
        r->first[r->position + i] = ((uint8_t *)dst)[i];
    r->position += got;
    return got;
}

/* Reads n bytes, or fewer if the stream ends or fails; a failure sets *failed. Returns the number of bytes. */
static inline size_t reader_full(Reader *r, void *dst, size_t n, bool *failed, Error *e) {
    size_t done = 0;
    while (done < n) {
        const size_t got = reader_some(r, (uint8_t *)dst + done, n - done, failed, e);
        if (!got) break;
        done += got;
    }
    return done;
}

/* Sets the error of a read of more bytes than the file has. */
static inline bool reader_short(const Reader *r, const char *what, uint64_t needed, uint64_t start, uint64_t end,
                                Error *e) {
    return error_set(e, "%s: %s: needs %llu bytes at byte %llu, the file ends at %llu", r->name, what,
                     (unsigned long long)needed, (unsigned long long)start, (unsigned long long)end);
}

/* Describes the file by its first bytes, for a message about a wrong file. */
static inline const char *reader_kind(const Reader *r, char text[FILE_KIND_TEXT]) {
    return file_kind_any(r->first, r->position < FILE_KIND_BYTES ? (size_t)r->position : FILE_KIND_BYTES, text);
}

/* Reads a header of n bytes, which begins with the magic number, or with `also`. */
static inline bool reader_header(Reader *r, void *header, size_t n, int32_t magic, int32_t also, Error *e) {
    int32_t found = 0;
    bool failed = false;
    char text[FILE_KIND_TEXT];
    const size_t got = reader_full(r, &found, sizeof found, &failed, e);
    if (failed) return false;
    if (got == sizeof found && (found == magic || found == also)) {
        memcpy(header, &found, sizeof found);
        const size_t more =
            sizeof found + reader_full(r, (uint8_t *)header + sizeof found, n - sizeof found, &failed, e);
        return more == n || failed ? !failed : reader_short(r, "header", n, 0, r->position, e);
    }
    uint8_t rest[FILE_KIND_BYTES - sizeof found]; /* to describe the file */
    reader_full(r, rest, sizeof rest, &failed, NULL);
    return error_set(e, "%s: this is %s, expected %s", r->name, reader_kind(r, text), magic_name(magic));
}

/* Reads exactly n bytes; `what` describes them in the error message if there are fewer. */
static inline bool reader_read(Reader *r, void *dst, size_t n, const char *what, Error *e) {
    const uint64_t start = r->position;
    bool failed = false;
    if (reader_full(r, dst, n, &failed, e) == n) return true;
    return failed ? false : reader_short(r, what, n, start, r->position, e);
}

/* Reads and discards exactly n bytes. */
static inline bool reader_skip(Reader *r, uint64_t n, const char *what, Error *e) {
    uint8_t waste[1 << 14];
    const uint64_t start = r->position;
    bool failed = false;
    for (uint64_t left = n; left;) {
        const size_t got = reader_some(r, waste, left < sizeof waste ? (size_t)left : sizeof waste, &failed, e);
        if (!got) return failed ? false : reader_short(r, what, n, start, r->position, e);
        left -= got;
    }
    return true;
}

/* Checks that the stream ends here. This also verifies the last checksum of a zstd stream. */
static inline bool reader_end(Reader *r, Error *e) {
    uint8_t extra;
    bool failed = false;
    if (!reader_some(r, &extra, 1, &failed, e)) return !failed;
    return error_set(e, "%s: more data follows byte %llu, expected the end of the file", r->name,
                     (unsigned long long)r->position - 1);
}

/* Reads the checksum, the XXH3-64 of everything before it, with which the file ends. */
static inline bool reader_checksum(Reader *r, Error *e) {
    const uint64_t hash = reader_hash(r);
    uint64_t stored;
    if (!reader_read(r, &stored, sizeof stored, "checksum", e) || !reader_end(r, e)) return false;
    return hash == stored || error_set(e, "%s: checksum is %016llx, expected %016llx: the file is damaged", r->name,
                                       (unsigned long long)hash, (unsigned long long)stored);
}

/* Reads exactly n bytes into new memory and appends a NUL; NULL on failure. As n may come from an untrusted file, it is
 * checked against the length of the source and the machine's memory. If the length of the source is unknown, the memory
 * grows as bytes arrive. */
static inline void *reader_blob(Reader *r, uint64_t n, const char *what, Error *e) {
    const uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE), start = r->position;
    const int64_t left = reader_left(r);
    if (left >= 0 && n > (uint64_t)left) {
        reader_short(r, what, n, start, start + (uint64_t)left, e);
        return NULL;
    }
    if (n >= memory) {
        error_set(e, "%s: %s: %llu bytes at byte %llu are more than this machine's memory of %llu", r->name, what,
                  (unsigned long long)n, (unsigned long long)start, (unsigned long long)memory);
        return NULL;
    }
    size_t capacity = left >= 0 || n < IO_PIECE ? (size_t)n : IO_PIECE, done = 0;
    uint8_t *blob = (uint8_t *)xmalloc(capacity + 1);
    bool failed = false;
    for (;;) {
        done += reader_full(r, blob + done, capacity - done, &failed, e);
        if (done < capacity || failed || capacity == n) break;
        capacity = n / 2 < capacity ? (size_t)n : 2 * capacity;
        blob = (uint8_t *)xrealloc(blob, capacity + 1, 1);
    }
    blob[done] = 0;
    if (done == n && !failed) return blob;
    if (!failed) reader_short(r, what, n, start, r->position, e);
    free(blob);
    return NULL;
}

/* Maps an uncompressed regular file into memory; the reader continues there, and reader_lend() can be used. Returns the
 * mapping, which the caller frees after the last use of lent bytes, or NULL, and changes nothing, if the source is not
 * such a file. */
static inline Mapping *reader_map(Reader *r) {
    const int64_t left = reader_left(r);
    if (!r->from_start || left < 1 || r->fd < 0 || r->broken) return NULL;
    Mapping *m = mapping_new(r->name, r->fd, (size_t)(r->position + (uint64_t)left));
    if (!m) return NULL;
    if (r->close_fd) close(r->fd);
    r->fd = -1;
    r->close_fd = false;
    r->drained = true;
    r->unread = 0;
    r->peeked_at = r->peeked_end;
    r->in = m->bytes;
    r->at = r->position;
    r->end = m->size;
    return r->map = m;
}

/* Returns the next n bytes of a reader after reader_map(); NULL on failure. Gives their pages back. */
static inline const uint8_t *reader_lend(Reader *r, uint64_t n, const char *what, Error *e) {
    const uint64_t start = r->position;
    if (n > r->end - r->at) {
        reader_short(r, what, n, start, r->end, e);
        return NULL;
    }
    const uint8_t *lent = r->in + r->at;
    for (uint64_t done = 0, piece; done < n; done += piece) {
        piece = n - done < IO_PIECE ? n - done : IO_PIECE;
        XXH3_64bits_update(r->hash, lent + done, (size_t)piece);
        mapping_forget(r->map, lent + done, (size_t)piece);
    }
    r->at += (size_t)n;
    r->position += n;
    return lent;
}

/* Reads the rest of the stream into new memory, appends a NUL and sets *n to the length; NULL on failure. Fails if it is
 * longer than `limit` bytes. */
static inline char *reader_rest(Reader *r, size_t limit, size_t *n, Error *e) {
    const int64_t left = reader_left(r);
    size_t capacity = left >= 0 ? (size_t)left + 1 : IO_BUFFER, done = 0;
    if (capacity > limit) capacity = limit + (limit < SIZE_MAX);
    char *text = (char *)xmalloc(capacity + (capacity < SIZE_MAX));
    bool failed = false;
    for (;;) { /* requests one byte more than the limit to detect a longer file */
        done += reader_full(r, text + done, capacity - done, &failed, e);
        if (done < capacity || failed || done > limit) break;
        capacity = limit / 2 < capacity ? limit + (limit < SIZE_MAX) : 2 * capacity;
        text = (char *)xrealloc(text, capacity + (capacity < SIZE_MAX), 1);
    }
    if (!failed && done > limit)
        failed = !error_set(e, "%s: is longer than %zu bytes, the limit for this file", r->name, limit);
    if (failed) {
        free(text);
        return NULL;
    }
    text[done] = 0;
    *n = done;
    return text;
}

/* Whether an entry of this name exists, which may be a link that leads nowhere. Opening such a link fails with a message,
 * whereas access() would report that there is no such file. */
static inline bool file_exists(const char *path) {
    struct stat st;
    return !lstat(path, &st);
}

/* Reads a whole file or standard input as reader_rest() does. */
static inline char *file_slurp(const char *path, size_t limit, size_t *n, Error *e) {
    Reader r;
    if (!reader_open(&r, path, e)) return NULL;
    char *text = reader_rest(&r, limit, n, e);
    reader_close(&r);
    return text;
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

typedef struct Writer {
    char *name;      /* for messages */
    char *path;      /* final name of the file, symbolic links resolved; NULL: no renaming */
    char *temporary; /* name of the temporary file, or NULL */
    int fd;          /* -1: closed */
    uint8_t *buffer;
    size_t used;
    ZSTD_CCtx *zstd;
    uint64_t position; /* bytes taken from the caller */
    XXH3_state_t *hash;
} Writer;

/* Discards the output: removes the temporary file and leaves an existing file unchanged. Also frees a writer whose open
 * failed. */
static inline void writer_abort(Writer *w) {
    if (w->temporary) unlink(w->temporary);
    if (w->fd >= 0 && w->fd != STDOUT_FILENO) close(w->fd);
    ZSTD_freeCCtx(w->zstd);
    XXH3_freeState(w->hash);
    free(w->buffer);
    free(w->temporary);
    free(w->path);
    free(w->name);
    *w = (Writer){.fd = -1};
}

/* Sets the message, removes the temporary file and makes all further calls fail. */
static inline bool writer_fail(Writer *w, const char *what, int error, Error *e) {
    error_set(e, "%s: cannot %s: %s", w->name, what, strerror(error));
    if (w->fd >= 0 && w->fd != STDOUT_FILENO) close(w->fd);
    w->fd = -1;
    if (w->temporary) unlink(w->temporary);
    free(w->temporary);
    w->temporary = NULL;
    return false;
}

static inline bool writer_raw(Writer *w, const void *src, size_t n, Error *e) {
    const uint8_t *s = (const uint8_t *)src;
    while (n) {
        const ssize_t put = write(w->fd, s, n < IO_PIECE ? n : IO_PIECE);
        if (put >= 0) {
            s += put;
            n -= (size_t)put;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            struct pollfd wait = {.fd = w->fd, .events = POLLOUT};
            poll(&wait, 1, -1);
        } else if (errno != EINTR) return writer_fail(w, "write", errno, e);
    }
    return true;
}

static inline bool writer_flush(Writer *w, Error *e) {
    const size_t n = w->used;
    w->used = 0;
    return writer_raw(w, w->buffer, n, e);
}

#define IO_TEMPORARY ".llmc-XXXXXX.tmp"

/* The path of the file that a program which opens `path` for writing creates or replaces: symbolic links at its end are
 * followed. NULL if there are too many. The caller frees it. */
static inline char *io_target(const char *path) {
    char *target = xstrdup(path), link[PATH_MAX];
    for (int i = 0; i < 40; i++) {
        const ssize_t n = readlink(target, link, sizeof link);
        if (n < 0) return target;
        const char *slash = link[0] == '/' ? NULL : strrchr(target, '/');
        const size_t directory = slash ? (size_t)(slash - target) + 1 : 0;
        char *next = (char *)xmalloc(directory + (size_t)n + 1);
        memcpy(next, target, directory);
        memcpy(next + directory, link, (size_t)n);
        next[directory + (size_t)n] = 0;
        free(target);
        target = next;
    }
    free(target);
    errno = ELOOP;
    return NULL;
}

/* Makes a folder and its missing parents. */
static inline bool io_make_folder(const char *folder, Error *e) {
    char *path = xstrdup(folder);
    bool ok = true;
    for (size_t i = 1, n = strlen(folder); ok && i <= n; i++) {
        struct stat about;
        if (i < n && path[i] != '/') continue;
        path[i] = 0;
        const int error = mkdir(path, 0777) ? errno : 0;
        if (error && (stat(path, &about) || !S_ISDIR(about.st_mode)))
            ok = error_set(e, "%s: cannot create the folder %s: %s", folder, path, strerror(error));
        path[i] = folder[i];
    }
    free(path);
    return ok;
}

/* Formats the template of a temporary name in the folder of `path`, for mkostemps() or mkdtemp(); the caller frees it. */
static inline char *io_temporary(const char *path) {
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const int kept = strlen(base) < 200 ? (int)strlen(base) : 200; /* with the suffix, a name has at most 255 bytes */
    const size_t size = (size_t)(base - path) + (size_t)kept + sizeof IO_TEMPORARY;
    char *name = (char *)xmalloc(size);
    snprintf(name, size, "%.*s%s", (int)(base - path) + kept, path, IO_TEMPORARY);
    return name;
}

/* Whether a file of this name is a temporary one of `base`, or of a file whose name is `base` with a suffix. */
static inline bool io_is_temporary(const char *name, const char *base) {
    const size_t n = strlen(name), most = strlen(base) < 200 ? strlen(base) : 200, end = strlen(IO_TEMPORARY);
    const char *mark = IO_TEMPORARY;
    if (n < most + end || strncmp(name, base, most) || name[most] != '.') return false;
    for (size_t i = 0; i < end; i++) {
        const char c = name[n - end + i];
        if (mark[i] == 'X' ? !isalnum((unsigned char)c) : c != mark[i]) return false;
    }
    return true;
}

/* Calls `remove` for every temporary file or folder of `path` whose process has ended. */
static inline void io_leftovers(const char *path, bool folders,
                                void (*remove)(const char *leftover, const char *path)) {
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char *directory = slash ? xstrndup(path, slash == path ? 1 : (size_t)(slash - path)) : xstrdup(".");
    DIR *d = opendir(directory);
    for (const struct dirent *entry; d && (entry = readdir(d));) {
        struct stat about;
        if (!io_is_temporary(entry->d_name, base)) continue;
        const int fd = openat(dirfd(d), entry->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd < 0) continue;
        const bool kind = !fstat(fd, &about) && (folders ? S_ISDIR(about.st_mode) : S_ISREG(about.st_mode));
        if (kind && !flock(fd, LOCK_EX | LOCK_NB)) {
            char *leftover = (char *)xmalloc(strlen(directory) + strlen(entry->d_name) + 2);
            sprintf(leftover, "%s/%s", directory, entry->d_name);
            remove(leftover, path);
            free(leftover);
        }
        close(fd);
    }
    if (d) closedir(d);
    free(directory);
}

static inline void writer_remove(const char *leftover, const char *path) {
    (void)path;
    unlink(leftover);
}

/* Creates a file from the template `name` and locks it. Returns -1 with errno on failure. */
static inline int writer_create(char *name) {
    for (;;) {
        struct stat about;
        memcpy(name + strlen(name) - strlen("XXXXXX.tmp"), "XXXXXX", 6);
        const int fd = mkostemps(name, 4, O_CLOEXEC);
        if (fd < 0) return -1;
        while (flock(fd, LOCK_EX) && errno == EINTR) {} /* some file systems cannot; then nobody can remove it either */
        if (fstat(fd, &about) || about.st_nlink) return fd;
        close(fd); /* another process has taken it for a leftover before it was locked */
    }
}

/* Creates the temporary file in the directory of w->path, with the permissions of the existing file, or with those that
 * a new file would get. Removes those of processes that have ended. */
static inline bool writer_temporary(Writer *w, const struct stat *old, Error *e) {
    char *name = io_temporary(w->path);
    io_leftovers(w->path, false, writer_remove);
    w->fd = writer_create(name);
    if (w->fd < 0) {
        const int error = errno;
        free(name);
        return error_set(e, "%s: cannot create a temporary file in its directory: %s", w->name, strerror(error));
    }
    w->temporary = name;
    const mode_t mask = umask(0);
    umask(mask);
    if (fchmod(w->fd, old ? old->st_mode & 0777 : 0666 & ~mask) < 0) return writer_fail(w, "set permissions", errno, e);
    return true;
}

static inline bool writer_start(Writer *w, const char *path, Error *e) {
    struct stat old;
    const bool exists = !stat(path, &old);
    if (!exists && errno != ENOENT) return error_set(e, "%s: cannot write: %s", path, strerror(errno));
    if (!*path) return error_set(e, "the name of an output file is empty");
    if (exists && S_ISDIR(old.st_mode)) return error_set(e, "%s: is a directory, expected a file", path);
    if (exists && faccessat(AT_FDCWD, path, W_OK, AT_EACCESS))
        return error_set(e, "%s: cannot write: %s", path, strerror(errno));
    if (exists && !S_ISREG(old.st_mode)) {
        w->fd = open(path, O_WRONLY | O_CLOEXEC);
        return w->fd >= 0 || error_set(e, "%s: cannot open: %s", path, strerror(errno));
    }
    w->path = io_target(path);
    if (!w->path) return error_set(e, "%s: cannot resolve: %s", path, strerror(errno));
    return writer_temporary(w, exists ? &old : NULL, e);
}

/* Opens `path` for writing; "-" is standard output. On failure no file is left behind. */
static inline bool writer_open(Writer *w, const char *path, Error *e) {
    const bool standard = !strcmp(path, "-");
    *w = (Writer){.name = xstrdup(standard ? "standard output" : path), .fd = standard ? STDOUT_FILENO : -1};
    if (!standard && !writer_start(w, path, e)) {
        writer_abort(w);
        return false;
    }
    w->hash = (XXH3_state_t *)checked_object(XXH3_createState(), "the state of a hash");
    XXH3_64bits_reset(w->hash);
    w->buffer = (uint8_t *)xmalloc(IO_BUFFER);
    const size_t length = strlen(path);
    if (length > 4 && !strcmp(path + length - 4, ".zst")) {
        w->zstd = (ZSTD_CCtx *)checked_object(ZSTD_createCCtx(), "a zstd compressor");
        ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_checksumFlag, 1);
    }
    return true;
}

/* Compresses n bytes; ZSTD_e_end as `end` also closes the frame. */
static inline bool writer_compress(Writer *w, const void *src, size_t n, ZSTD_EndDirective end, Error *e) {
    ZSTD_inBuffer in = {src, n, 0};
    for (;;) {
        ZSTD_outBuffer out = {w->buffer, IO_BUFFER, w->used};
        const size_t left = ZSTD_compressStream2(w->zstd, &out, &in, end);
        if (ZSTD_isError(left)) {
            error_set(e, "%s: cannot compress: %s", w->name, ZSTD_getErrorName(left));
            return writer_fail(w, "compress", EIO, NULL);
        }
        w->used = out.pos;
        if (in.pos == n && (end == ZSTD_e_continue || !left)) return true;
        if (w->used == IO_BUFFER && !writer_flush(w, e)) return false;
    }
}

/* Writes n bytes. A full disk or a closed pipe is reported here or by writer_commit(). */
static inline bool writer_write(Writer *w, const void *src, size_t n, Error *e) {
    if (w->fd < 0) return error_set(e, "%s: cannot write: an earlier write failed", w->name);
    if (!n) return true;
    XXH3_64bits_update(w->hash, src, n);
    w->position += n;
    if (w->zstd) return writer_compress(w, src, n, ZSTD_e_continue, e);
    if (w->used + n > IO_BUFFER && !writer_flush(w, e)) return false;
    if (n >= IO_BUFFER) return writer_raw(w, src, n, e);
    memcpy(w->buffer + w->used, src, n);
    w->used += n;
    return true;
}

/* XXH3-64 of all bytes written so far, before compression. */
static inline uint64_t writer_hash(const Writer *w) { return XXH3_64bits_digest(w->hash); }

/* Writes the checksum for reader_checksum(). */
static inline bool writer_checksum(Writer *w, Error *e) {
    const uint64_t hash = writer_hash(w);
    return writer_write(w, &hash, sizeof hash, e);
}

/* Makes the directory entry of `path` durable. Failure is not an error, because the file itself is safe. */
static inline void writer_sync_directory(const char *path) {
    const char *slash = strrchr(path, '/');
    char *directory = slash ? xstrndup(path, slash == path ? 1 : (size_t)(slash - path)) : xstrdup(".");
    const int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(directory);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

static inline bool writer_finish(Writer *w, Error *e) {
    if (w->fd < 0) return error_set(e, "%s: cannot write: an earlier write failed", w->name);
    if (w->zstd && !writer_compress(w, NULL, 0, ZSTD_e_end, e)) return false;
    if (!writer_flush(w, e)) return false;
    if (w->temporary && fsync(w->fd) < 0) return writer_fail(w, "write to the disk", errno, e);
    if (w->temporary && rename(w->temporary, w->path) < 0) return writer_fail(w, "rename the temporary file", errno, e);
    const bool renamed = w->temporary != NULL;
    free(w->temporary);
    w->temporary = NULL;
    if (w->fd != STDOUT_FILENO) { /* only now, as the lock ends with it */
        const int fd = w->fd;
        w->fd = -1;
        if (close(fd) < 0 && !renamed) return writer_fail(w, "close", errno, e);
    }
    if (!renamed) return true;
    writer_sync_directory(w->path);
    return true;
}

/* Flushes, syncs and renames the file. The writer is closed afterwards, whatever the result. */
static inline bool writer_commit(Writer *w, Error *e) {
    const bool ok = writer_finish(w, e);
    writer_abort(w);
    return ok;
}

#endif
