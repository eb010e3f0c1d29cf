/* copy_model.c - copies a model from any form that the programs read to any form that they write.
 *
 *     make build/copy_model
 *     build/copy_model [--new] [--value-head] [--dtype float32|bf16|f16|q8_0] [--file-bytes N] IN OUT
 *
 * --new writes everything anew, as for a model that did not come from a folder: config.json, names, types. --value-head
 * gives the model a head for rewards. --file-bytes divides the tensors of a folder into files of at most N bytes.
 */
#include "../llmc/base/error.h"             /* die, Error */
#include "../llmc/cpu/cpu.h"                /* backend_cpu */
#include "../llmc/model/backend.h"          /* Backend, DTYPE_FLOAT32, Device */
#include "../llmc/model/huggingface_save.h" /* HuggingfaceOutput, huggingface_is_output, huggingface_save */
#include "../llmc/model/model.h"            /* Model, model_free */
#include "../llmc/model/model_file.h"       /* MODEL_DTYPES, ModelDtype, MODEL_BF16, MODEL_F16, ... */
#include "../llmc/model/model_folder.h"     /* model_folder_output */
#include "../llmc/model/model_load.h"       /* ModelFile, model_file_free */
#include "../llmc/model/safetensors.h"      /* SAFETENSORS_BF16, SAFETENSORS_F16, SAFETENSORS_F32, ... */

static void usage(void) {
    die("usage: copy_model [--new] [--value-head] [--dtype float32|bf16|f16|q8_0] [--file-bytes N] IN OUT");
}

static ModelDtype type_of(const char *word) {
    int type = 0;
    while (type < MODEL_DTYPES && strcmp(word, model_dtype_name[type])) type++;
    if (type == MODEL_DTYPES) usage();
    return (ModelDtype)type;
}

int main(int argc, char **argv) {
    Error e;
    Model m;
    ModelFile f;
    Device *d;
    bool new = false, value_head = false;
    SafetensorsType type = SAFETENSORS_TYPE_COUNT;
    uint64_t file_bytes = 0;
    ModelDtype dtype = MODEL_FLOAT32;
    const char *name[2];
    int names = 0;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (!strcmp(a, "--new")) new = true;
        else if (!strcmp(a, "--value-head")) value_head = true;
        else if (!strcmp(a, "--dtype") && i + 1 < argc) {
            dtype = type_of(argv[++i]);
            if (dtype == MODEL_Q8_0) continue;
            type = dtype == MODEL_BF16 ? SAFETENSORS_BF16 : dtype == MODEL_F16 ? SAFETENSORS_F16 : SAFETENSORS_F32;
        } else if (!strcmp(a, "--file-bytes") && i + 1 < argc) file_bytes = strtoull(argv[++i], NULL, 10);
        else if (names < 2 && a[0] != '-') name[names++] = a;
        else usage();
    }
    if (names != 2) usage();
    const bool folder = huggingface_is_output(name[1]);
    if ((new || file_bytes) && !folder) die("%s: --new and --file-bytes need a folder", name[1]);
    const Backend *b = backend_cpu();
    if (!b->open(&d, DTYPE_FLOAT32, &e)) die("%s", e.text);
    if (!model_load(&m, &f, name[0], NULL, value_head, b, d, false, 1, NULL, &e)) die("%s", e.text);
    HuggingfaceOutput out = model_folder_output(&f, type);
    out.one_file = out.shard = file_bytes;
    if (new) out.source = NULL;
    if (!model_check_format(&m.config, name[1], dtype, &e)) die("%s", e.text);
    const bool ok =
        folder ? huggingface_save(&m, &out, name[1], &e) : model_save(&m, &f, name[1], dtype, NULL, NULL, &e);
    if (!ok) die("%s", e.text);
    model_free(&m);
    model_file_free(&f);
    b->close(d);
    return 0;
}
