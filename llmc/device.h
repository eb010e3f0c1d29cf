/* device.h - opening the device that --device names: the CPU, which is linked in, or CUDA, from llmc_cuda.so.
 *
 * library.h describes where the library is searched for. LLMC_CUDA_LIBRARY names another file; the tests use this to
 * load the same backend compiled for the CPU. Without --device cuda the library is neither needed nor loaded.
 *
 *     const Backend *b;  Device *d;
 *     if (!backend_open(DEVICE_CUDA, DTYPE_BF16, &b, &d, &e)) die("%s", e.text);
 *
 * DEVICE_OPTIONS are the options --device and --dtype of every program that runs a model.
 */
#ifndef LLMC_DEVICE_H
#define LLMC_DEVICE_H

#include "base/error.h"    /* Error, error_set */
#include "base/library.h"  /* Library, library_open */
#include "model/backend.h" /* Backend, Dtype, DTYPE_BF16, DTYPE_FLOAT32, ... */

typedef enum DeviceKind { DEVICE_CPU, DEVICE_CUDA } DeviceKind;
#define DEVICE_CHOICES "cpu|cuda"

/* A Dtype, or DTYPE_AUTO for the device's default. */
#define DTYPE_CHOICES "float32|bf16|auto"
enum { DTYPE_AUTO = 2 };

#define DEVICE_OPTIONS(o)                                                                                              \
    OPTION_CHOICE("device", 0, &(o).device, DEVICE_CHOICES, "device that runs the model"),                             \
        OPTION_CHOICE("dtype", 0, &(o).dtype, DTYPE_CHOICES,                                                           \
                      "arithmetic of products, storage of activations; auto is float32 on cpu and bf16 on cuda")

/* Returns the dtype that a value of --dtype selects. */
static inline Dtype device_dtype(DeviceKind kind, int choice) {
    if (choice == DTYPE_AUTO) return kind == DEVICE_CUDA ? DTYPE_BF16 : DTYPE_FLOAT32;
    return (Dtype)choice;
}

/* The library's only symbol. Returns the table for this dtype, or NULL if it was built for a table of another size. */
typedef const Backend *(*CudaBackend)(size_t table_bytes, int dtype);
#define CUDA_BACKEND_SYMBOL "llmc_cuda_backend"
#define CUDA_LIBRARY        "llmc_cuda.so"

/* Returns the CUDA backend's table, or NULL with a message. The library stays loaded. */
static inline const Backend *backend_cuda(Dtype dtype, Error *e) {
    Library l;
    Error why;
    if (!library_open(&l, CUDA_LIBRARY, "LLMC_CUDA_LIBRARY", RTLD_LOCAL, "make cuda builds " CUDA_LIBRARY, &why)) {
        error_set(e, "--device cuda: %s; use --device cpu", why.text);
        return NULL;
    }
    CudaBackend table;
    *(void **)&table = dlsym(l.handle, CUDA_BACKEND_SYMBOL);
    const Backend *b = table ? table(sizeof(Backend), (int)dtype) : NULL;
    if (!b) error_set(e, "--device cuda: %s was built from a different version than this program; run make", l.path);
    return b;
}

#ifndef __cplusplus
#include "cpu/cpu.h" /* backend_cpu_for, backend_cpu_level */

/* The instruction set of a CPU backend's kernels; the name of every other backend. */
static inline const char *device_kernels(const Backend *b) {
    return !strcmp(b->name, "cpu") ? backend_cpu_level() : b->name;
}

/* Opens the device and returns its table in *b. */
static inline bool backend_open(DeviceKind kind, Dtype dtype, const Backend **b, Device **d, Error *e) {
    *b = kind == DEVICE_CUDA ? backend_cuda(dtype, e) : backend_cpu_for(dtype);
    return *b && (*b)->open(d, dtype, e);
}
#endif

#endif
