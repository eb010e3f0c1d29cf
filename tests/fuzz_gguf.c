/* fuzz_gguf.c - libFuzzer target: arbitrary bytes as a GGUF file. Everything that opens is read completely: entries by
 * every function, tensors, configuration, weights and tokenizer.
 *
 *     clang -g -O1 -std=c11 -D_GNU_SOURCE -fopenmp -fsanitize=fuzzer,address,undefined tests/fuzz_gguf.c -lzstd -lm
 *     ./a.out -max_len=8192 corpus/ tests/corpus/gguf/
 */
#include "../llmc/base/error.h"       /* Error, xmalloc, xstrndup */
#include "../llmc/base/text.h"        /* TextSlice */
#include "../llmc/model/config.h"     /* ModelConfig */
#include "../llmc/model/gguf.h"       /* Gguf, GgufEntry, GgufTensor, gguf_close, ... */
#include "../llmc/model/gguf_model.h" /* GgufTokenizer, gguf_config, gguf_load, gguf_tokenizer, ... */
#include "../llmc/model/quantized.h"  /* quant_decode */
#include "../llmc/model/tensors.h"    /* TENSOR_COUNT, TensorInfo, model_tensors */
#include "fuzz.h"                     /* require, require_error */

static void require_read(bool ok, const Error *e) {
    if (!ok) require_error(e);
}

static void read_entry(const Gguf *g, const GgufEntry *entry) {
    Error e = {""};
    int64_t integer;
    double number;
    bool flag;
    TextSlice text, *texts = NULL;
    int32_t *integers = NULL;
    float *numbers = NULL;
    size_t n;
    char *key = xstrndup(entry->key.text, entry->key.length);
    require(gguf_find(g, key) == entry);
    require_read(gguf_get_integer(g, key, -100, 100, &integer, &e), &e);
    require_read(gguf_get_number(g, key, -100, 100, &number, &e), &e);
    require_read(gguf_get_flag(g, key, &flag, &e), &e);
    if (gguf_get_text(g, key, &text, &e)) require(text.length < g->bytes);
    if (gguf_get_texts(g, key, &texts, &n, &e))
        for (size_t i = 0; i < n; i++) require(texts[i].length < g->bytes);
    require_read(gguf_get_integers(g, key, &integers, &n, &e), &e);
    require_read(gguf_get_numbers(g, key, &numbers, &n, &e), &e);
    free(texts), free(integers), free(numbers), free(key);
}

static void read_tensor(const GgufTensor *t) {
    float *values = (float *)xmalloc(t->elements * sizeof *values);
    quant_decode(t->type, t->data, values, t->elements);
    free(values);
}

static volatile float sink;

/* A GgufPut: each element is handed over once, so their number is that of the model. */
static bool count(void *context, int tensor, int layer, size_t first, const float *values, size_t n, Error *e) {
    size_t *total = (size_t *)context;
    (void)tensor, (void)layer, (void)first, (void)e;
    for (size_t i = 0; i < n; i++) sink = values[i];
    *total += n;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Gguf g;
    ModelConfig c;
    GgufTokenizer t;
    Error e = {""};
    if (!gguf_memory(&g, data, n, &e)) {
        require_read(false, &e);
        return 0;
    }
    for (size_t i = 0; i < g.entry_count; i++) read_entry(&g, &g.entries[i]);
    for (size_t i = 0; i < g.tensor_count; i++) read_tensor(&g.tensors[i]);
    const bool model = gguf_config(&g, &c, &e);
    require_read(model, &e);
    if (model) {
        TensorInfo tensors[TENSOR_COUNT];
        size_t total = 0;
        require(gguf_load(&g, &c, count, &total, &e) && total == model_tensors(&c, tensors));
    }
    if (gguf_tokenizer(&g, &t, &e)) gguf_tokenizer_free(&t);
    else require_read(false, &e);
    gguf_close(&g);
    return 0;
}
