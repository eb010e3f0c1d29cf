/* fuzz_io.c - libFuzzer target: arbitrary bytes as a file that may be compressed, read whole and in pieces.
 *
 * The first byte is the size of the pieces. Both ways must deliver the same bytes and fail at the same place; a stream
 * that expands without bound must end.
 */
#include "../llmc/base/error.h" /* Error */
#include "../llmc/base/io.h"    /* Reader, reader_close, reader_hash, reader_memory, ... */
#include "fuzz.h"               /* require, require_error */

enum { MOST = 1 << 22 }; /* bytes that are read */

/* Reads up to MOST bytes, `piece` at a time. Returns whether no read failed. */
static bool read_all(const uint8_t *data, size_t n, size_t piece, uint64_t *bytes, uint64_t *hash) {
    static uint8_t to[MOST];
    Reader r;
    Error e = {""};
    bool failed = false;
    *bytes = *hash = 0;
    if (!reader_memory(&r, data, n, &e)) return false;
    while (r.position < MOST) {
        const size_t left = MOST - (size_t)r.position;
        if (!reader_some(&r, to, piece < left ? piece : left, &failed, &e)) break;
    }
    if (failed) require_error(&e);
    *bytes = r.position;
    *hash = reader_hash(&r);
    reader_close(&r);
    return !failed;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    uint64_t bytes[2], hash[2];
    if (!n) return 0;
    const bool whole = read_all(data + 1, n - 1, MOST, &bytes[0], &hash[0]);
    const bool parts = read_all(data + 1, n - 1, *data + 1u, &bytes[1], &hash[1]);
    if (whole && parts) require(bytes[0] == bytes[1] && hash[0] == hash[1]);
    else require(!whole || bytes[0] == MOST);
    return 0;
}
