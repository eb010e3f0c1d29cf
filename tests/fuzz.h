/* fuzz.h - what the libFuzzer targets share: requirements, and files with a corrected checksum. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include "../llmc/base/error.h" /* Error, xmalloc */
#include "../llmc/base/io.h"    /* XXH3_64bits */

static inline void require(bool holds) {
    if (!holds) abort();
}

/* A refusal is one line. */
static inline void require_error(const Error *e) { require(strlen(e->text) > 10 && !strchr(e->text, '\n')); }

/* Makes the last 8 of n bytes the checksum of those before them. */
static inline void fuzz_seal(void *file, size_t n) {
    const uint64_t hash = XXH3_64bits(file, n - 8);
    memcpy((char *)file + n - 8, &hash, 8);
}

/* A copy of n >= 8 bytes with a corrected checksum. The caller frees it. */
static inline uint8_t *fuzz_sealed(const uint8_t *data, size_t n) {
    uint8_t *sealed = (uint8_t *)xmalloc(n);
    memcpy(sealed, data, n);
    fuzz_seal(sealed, n);
    return sealed;
}

#endif
