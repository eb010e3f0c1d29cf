/* fuzz_ref_logps.c - libFuzzer target: arbitrary bytes as a file of reference log-probabilities, unchanged and with a
 * corrected checksum. A file that is accepted has only log-probabilities.
 */
#include "../llmc/base/error.h"        /* Error */
#include "../llmc/base/io.h"           /* Reader, reader_close, reader_memory */
#include "../llmc/records/ref_logps.h" /* RefLogps, RefTable, ref_logps_body, ref_logps_find, ... */
#include "fuzz.h"                      /* require, fuzz_sealed, require_error */

static void read_file(const uint8_t *data, size_t n) {
    Reader in;
    RefLogps l = {0};
    Error e = {""};
    if (!reader_memory(&in, data, n, &e)) return;
    const bool ok = ref_logps_body(&l, &in, &e);
    reader_close(&in);
    if (!ok) require_error(&e);
    for (int i = 0; ok && i < l.tables; i++) {
        const RefTable *t = &l.table[i];
        require(ref_logps_find(&l, t->data, t->count) != NULL);
        for (uint64_t k = 0; k < t->count; k++) require(t->logp[k] <= 1e-3f);
    }
    ref_logps_free(&l);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    read_file(data, n);
    if (n <= 64) return 0;
    uint8_t *sealed = fuzz_sealed(data, n);
    read_file(sealed, n);
    free(sealed);
    return 0;
}
