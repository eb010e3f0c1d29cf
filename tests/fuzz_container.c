/* fuzz_container.c - libFuzzer target: arbitrary bytes as the single file of a model, unchanged and with a corrected
 * checksum. Values of a file that opens are read, and its texts are those of a model's file.
 */
#include "../llmc/base/error.h"            /* Error, xmalloc */
#include "../llmc/model/huggingface.h"     /* huggingface_floats */
#include "../llmc/model/model_container.h" /* Container, container_close, container_open, container_take */
#include "../llmc/model/model_load.h"      /* ModelFile, model_file_free */
#include "fuzz.h"                          /* require, fuzz_sealed */

/* Reads everything in the file. Takes the bytes over. */
static void read_file(uint8_t *data, size_t n) {
    Container c;
    Error e = {""};
    float x[64];
    ModelFile f = {.lineage = json_array()};
    if (!container_open(&c, "file", data, n, &e)) {
        require(strlen(e.text) > 5 && !strchr(e.text, '\n'));
        json_decref(f.lineage);
        return;
    }
    for (size_t i = 0; i < c.model.parts.count; i++) {
        const size_t elements = c.model.parts.part[i].rows * c.model.parts.part[i].columns;
        huggingface_floats(&c.model, i, 0, x, elements < 64 ? elements : 64);
    }
    for (int32_t i = 0; i < c.model.stops.count; i++) require(c.model.stops.ids[i] < c.model.config.vocab);
    container_take(&c, &f);
    require(json_is_array(f.lineage) && f.hash);
    for (size_t i = 0; f.source && i < f.source->files; i++) require(!strstr(f.source->file[i].name, ".."));
    model_file_free(&f);
    container_close(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    uint8_t *copy = (uint8_t *)xmalloc(n + 1);
    memcpy(copy, data, n);
    read_file(copy, n);
    if (n <= 16) return 0;
    read_file(fuzz_sealed(data, n), n);
    return 0;
}
