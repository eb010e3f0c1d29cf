/* fuzz_single.c - libFuzzer target: arbitrary bytes as a model in one safetensors file, as they are and with a corrected
 * checksum. A file that opens has all values of its tensors.
 */
#include "../llmc/base/error.h"         /* Error, xmalloc */
#include "../llmc/base/io.h"            /* Reader, XXH3_64bits, reader_memory */
#include "../llmc/model/huggingface.h"  /* huggingface_floats, Huggingface, huggingface_close */
#include "../llmc/model/model_single.h" /* single_begins, single_open */

static void require(bool holds) {
    if (!holds) abort();
}

static void open_bytes(const uint8_t *data, size_t n) {
    Reader r;
    Huggingface h;
    Error e = {""};
    bool is;
    float x[16];
    require(reader_memory(&r, data, n, &e));
    if (!single_begins(&r, &is, &e) || !single_open(&h, "memory", &r, &e)) {
        require(strlen(e.text) > 5 && !strchr(e.text, '\n'));
        return;
    }
    for (size_t i = 0; i < h.parts.count; i++) {
        const size_t all = h.parts.part[i].rows * h.parts.part[i].columns;
        huggingface_floats(&h, i, 0, x, all < 16 ? all : 16);
        huggingface_floats(&h, i, all - 1, x, 1);
    }
    huggingface_close(&h);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n >= 4 && *(const uint32_t *)(const void *)data == ZSTD_MAGICNUMBER)
        return 0; /* memory has no file behind it */
    open_bytes(data, n);
    if (n < 24) return 0;
    uint8_t *copy = (uint8_t *)xmalloc(n);
    memcpy(copy, data, n);
    const uint64_t hash = XXH3_64bits(copy, n - 8);
    memcpy(copy + n - 8, &hash, 8);
    open_bytes(copy, n);
    free(copy);
    return 0;
}
