/* fuzz_checkpoint.c - libFuzzer target: arbitrary bytes as a checkpoint, unchanged and with a corrected checksum.
 *
 *     clang -g -O1 -std=c11 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined tests/fuzz_checkpoint.c -lzstd -lm
 *     ./a.out -max_len=4096 corpus/ tests/corpus/checkpoint/
 */
#include "../llmc/base/error.h"       /* Error */
#include "../llmc/base/io.h"          /* reader_memory */
#include "../llmc/model/checkpoint.h" /* CheckpointReader, checkpoint_blob, checkpoint_close, ... */
#include "fuzz.h"                     /* require, fuzz_sealed, require_error */

/* Reads everything in the file. Sections are in turn read whole, read in part and skipped. */
static void read_file(const uint8_t *data, size_t n) {
    CheckpointReader c;
    Error e = {""};
    float weights[1000];
    char tag[5];
    uint64_t bytes;
    if (!reader_memory(&c.in, data, n, &e)) return;
    bool ok = checkpoint_start(&c, &e);
    for (int piece = 0; ok && piece < 50 && c.weights_left; piece++)
        ok = checkpoint_weights(&c, weights, c.weights_left < 1000 ? c.weights_left : 1000, "parameters", &e);
    for (int turn = 0; ok && (ok = checkpoint_section(&c, tag, &bytes, &e)) && *tag; turn++) {
        require(strlen(tag) == 4 && bytes == c.section_left);
        if (turn % 3 == 0) {
            size_t length;
            char *blob = checkpoint_blob(&c, 1 << 16, &length, tag, &e);
            ok = blob != NULL;
            if (ok) require(length == bytes && !blob[length]);
            free(blob);
        } else if (turn % 3 == 1)
            ok = checkpoint_payload(&c, weights, bytes < sizeof weights ? (size_t)bytes / 2 : 100, tag, &e);
    }
    if (!ok) require_error(&e);
    checkpoint_close(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    read_file(data, n);
    if (n <= 1024) return 0;
    uint8_t *sealed = fuzz_sealed(data, n);
    read_file(sealed, n);
    free(sealed);
    return 0;
}
