/* gguf_copy.c - reads a model from a GGUF file and writes it as another one, for dev/check_gguf.py.
 *
 *     make build/gguf_copy && build/gguf_copy IN.gguf OUT.gguf F32|F16|BF16|Q8_0|Q4_0
 */
#include "../llmc/base/error.h"       /* die, Error, usage_error, xmalloc */
#include "../llmc/model/config.h"     /* ModelConfig */
#include "../llmc/model/gguf.h"       /* Gguf, gguf_close, gguf_open */
#include "../llmc/model/gguf_model.h" /* GgufTokenizer, gguf_config, gguf_load, gguf_tokenizer, ... */
#include "../llmc/model/gguf_save.h"  /* GgufOut, gguf_save */
#include "../llmc/model/quantized.h"  /* QuantType, QUANT_COUNT, quant_info */
#include "../llmc/model/tensors.h"    /* TensorInfo, TENSOR_COUNT, model_tensors */

/* Values of the model in the order of tensors.h. */
typedef struct Values {
    TensorInfo t[TENSOR_COUNT];
    float *v;
} Values;

static float *values_at(const Values *m, int tensor, int layer, size_t first) {
    const TensorInfo *t = &m->t[tensor];
    return m->v + t->offset + (size_t)layer * t->rows * t->columns + first;
}

static bool put(void *context, int tensor, int layer, size_t first, const float *values, size_t n, Error *e) {
    (void)e;
    memcpy(values_at((const Values *)context, tensor, layer, first), values, n * sizeof *values);
    return true;
}

static bool get(void *context, int tensor, int layer, size_t first, float *values, size_t n, Error *e) {
    (void)e;
    memcpy(values, values_at((const Values *)context, tensor, layer, first), n * sizeof *values);
    return true;
}

static QuantType type_named(const char *name) {
    for (int i = 0; i < QUANT_COUNT; i++)
        if (!strcmp(quant_info((QuantType)i)->name, name)) return (QuantType)i;
    die("%s: is not a type, expected F32, F16, BF16, Q8_0 or Q4_0", name);
}

int main(int argc, char **argv) {
    Gguf g;
    ModelConfig c;
    GgufTokenizer tokenizer;
    Values m;
    Error e;
    if (argc != 4) usage_error("expected IN.gguf OUT.gguf TYPE");
    if (!gguf_open(&g, argv[1], &e) || !gguf_config(&g, &c, &e)) die("%s", e.text);
    m.v = (float *)xmalloc(model_tensors(&c, m.t) * sizeof *m.v);
    if (!gguf_load(&g, &c, put, &m, &e) || !gguf_tokenizer(&g, &tokenizer, &e)) die("%s", e.text);
    const GgufOut out = {.type = type_named(argv[3]), .tokenizer = &tokenizer, .carry = &g};
    if (!gguf_save(&c, &out, argv[2], get, &m, &e)) die("%s", e.text);
    gguf_tokenizer_free(&tokenizer);
    gguf_close(&g);
    free(m.v);
    return 0;
}
