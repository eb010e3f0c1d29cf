/* fuzz_state.c - libFuzzer target: a training state, a state of adapters and a checkpoint with its trailer, in which
 * bytes are changed, with a corrected checksum.
 *
 * The first byte of the input selects the file. Each further three bytes are a change: 16 bits of a position in the
 * file's description (the JSON header of a state, the sections at the end of a checkpoint), and the new byte. A file
 * that is refused must be refused in one line; one that loads has finite sizes, and every value of it is read.
 */
#include "../llmc/base/error.h"       /* Error, xmalloc */
#include "../llmc/base/io.h"          /* file_slurp */
#include "../llmc/cpu/cpu.h"          /* backend_cpu */
#include "../llmc/model/backend.h"    /* DTYPE_FLOAT32, Device */
#include "../llmc/model/config.h"     /* ModelConfig, LoraConfig, gpt2_config */
#include "../llmc/model/lora.h"       /* lora_parse_targets */
#include "../llmc/model/model.h"      /* Model, model_free */
#include "../llmc/model/model_file.h" /* model_load_as, MODEL_FLOAT32, model_save */
#include "../llmc/model/model_load.h" /* ModelLoad, ModelFile, model_file_free */
#include "../llmc/model/optimizer.h"  /* Optimizer, optimizer_free */
#include "../llmc/text/tokenizer.h"   /* Tokenizer, tokenizer_bytes, tokenizer_free, tokenizer_store */
#include "fuzz.h"                     /* require, fuzz_seal, require_error */
#include <sys/mman.h>

enum { STATE, ADAPTERS, CHECKPOINT, KINDS };

static Device *device;
static char *base[KINDS];
static size_t bytes[KINDS];
static ModelLoad how[KINDS];
static const ModelConfig *shape;

/* Writes the three files and reads them into memory. */
static void prepare(void) {
    static ModelConfig config;
    Error e;
    Tokenizer t;
    char path[64];
    require(backend_cpu()->open(&device, DTYPE_FLOAT32, &e) && tokenizer_bytes(&t, &e));
    config = gpt2_config(1, 1, 8, 260, 8);
    shape = &config;
    for (int k = 0; k < KINDS; k++) {
        Model m;
        ModelFile f;
        Optimizer o;
        how[k] = (ModelLoad){.shape = shape, .gradients = true, .seed = 1};
        if (k == ADAPTERS) {
            how[k].lora = (LoraConfig){.rank = 2, .scale = 1};
            require(lora_parse_targets("all-linear", &how[k].lora.targets, &e));
        }
        require(model_load_as(&m, &f, "new", &how[k], backend_cpu(), device, &o, &e));
        require(tokenizer_store(&t, &f.tokenizer, &f.tokenizer_bytes, &e));
        snprintf(path, sizeof path, "/dev/shm/fuzz_state.%d%s", (int)getpid(), k == CHECKPOINT ? ".bin" : "");
        require(model_save(&m, &f, path, MODEL_FLOAT32, k == CHECKPOINT ? NULL : &o,
                           k == CHECKPOINT ? NULL : "{\"stage\":\"train_sft\",\"step\":3}", &e));
        base[k] = file_slurp(path, 1 << 24, &bytes[k], &e);
        require(base[k] != NULL);
        unlink(path);
        optimizer_free(&o, &m), model_free(&m), model_file_free(&f);
        if (k == STATE) how[k].shape = NULL;
    }
    how[CHECKPOINT].shape = NULL;
    tokenizer_free(&t);
}

/* The place of a change: in the header of a state, or in the last bytes of a checkpoint. */
static size_t place(int kind, size_t at) {
    uint64_t header;
    memcpy(&header, base[kind], sizeof header);
    if (kind == CHECKPOINT) return bytes[kind] - 9 - at % 8000;
    return at % (size_t)(header + 8);
}

static void load(int kind, const char *path) {
    Error e = {""};
    Model m;
    ModelFile f;
    Optimizer o;
    ModelLoad load = how[kind];
    if (kind != CHECKPOINT) load.resume = path;
    if (!model_load_as(&m, &f,
                       kind == CHECKPOINT ? path
                       : kind == ADAPTERS ? "new"
                                          : NULL,
                       &load, backend_cpu(), device, &o, &e)) {
        require_error(&e);
        return;
    }
    require(m.config.layers >= 1 && m.config.width >= 1 && m.parameters > 0);
    float *w = (float *)xmalloc(m.parameters * sizeof *w);
    m.backend->weights_download(m.device, w, m.weights, m.parameters);
    free(w);
    optimizer_free(&o, &m), model_free(&m), model_file_free(&f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (!device) prepare();
    if (!n) return 0;
    const int kind = data[0] % KINDS;
    char path[64], *file = (char *)xmalloc(bytes[kind]);
    memcpy(file, base[kind], bytes[kind]);
    for (size_t i = 1; i + 3 <= n; i += 3) file[place(kind, data[i] + 256u * data[i + 1])] = (char)data[i + 2];
    fuzz_seal(file, bytes[kind]);
    const int fd = memfd_create("fuzz", 0);
    require(fd >= 0 && write(fd, file, bytes[kind]) == (ssize_t)bytes[kind]);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    load(kind, path);
    close(fd);
    free(file);
    return 0;
}
