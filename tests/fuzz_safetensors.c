/* fuzz_safetensors.c - libFuzzer target: arbitrary bytes as a safetensors file. A file that opens is written again and
 * read back with the same tensors.
 */
#include "../llmc/base/error.h"        /* Error */
#include "../llmc/model/safetensors.h" /* SafeTensor, safetensors_find, Safetensors, SafetensorsWriter, ... */
#include "fuzz.h"                      /* require */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Safetensors s;
    Error e = {""};
    float x[16];
    if (!safetensors_memory(&s, "file", data, n, &e)) {
        require(strlen(e.text) > 5 && !strchr(e.text, '\n'));
        return 0;
    }
    SafetensorsWriter w = {0};
    for (size_t i = 0; i < s.count; i++) {
        const SafeTensor *t = &s.tensor[i];
        require(safetensors_find(&s, t->name) == t && t->data + (t->end - t->begin) <= data + n);
        if (safetensors_type_is_float(t->type)) safetensors_floats(t, 0, x, t->elements < 16 ? t->elements : 16);
        safetensors_add(&w, t->name, t->type, t->dims, t->shape);
    }
    require(safetensors_begin(&w, "/dev/null", s.metadata, &e));
    for (size_t i = 0; i < w.count; i++) {
        const SafeTensor *t = safetensors_find(&s, w.tensor[i].name);
        require(t && t->end - t->begin == w.tensor[i].end - w.tensor[i].begin);
        require(safetensors_put(&w, t->data, t->end - t->begin, &e));
    }
    require(safetensors_commit(&w, &e));
    safetensors_close(&s);
    return 0;
}
