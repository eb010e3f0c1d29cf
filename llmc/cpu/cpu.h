/* cpu.h - the CPU backend's table, for the instruction set of this machine.
 *
 * cpu.c is compiled once per instruction set (x86-64-v3; AVX-512; AVX-512 with bfloat16) and type of activations, and
 * all of these tables are linked into every program. backend_cpu() returns the best one that this processor supports.
 * It follows oneDNN's choice, so that ONEDNN_MAX_CPU_ISA (AVX2, AVX512_CORE, AVX512_CORE_BF16, ...) limits both, which is
 * how the tests cover older processors.
 *
 *     const Backend *b = backend_cpu();
 *     Device *d;
 *     if (!b->open(&d, DTYPE_FLOAT32, &e)) die("%s", e.text);
 */
#ifndef LLMC_CPU_CPU_H
#define LLMC_CPU_CPU_H

#include "../model/backend.h" /* Backend, DTYPE_BF16, Dtype */
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>

/* Approximate memory of oneDNN's compiled kernels, their scratch memory and the threads' stacks. In bfloat16 there are
 * more kernels and it is twice as much. scratch_predict() includes it. */
enum { CPU_CODE_BYTES = 10 << 20 };

const Backend *backend_cpu_v3(void);
const Backend *backend_cpu_avx512(void);
const Backend *backend_cpu_bf16(void);
const Backend *backend_cpu_half_v3(void);
const Backend *backend_cpu_half_avx512(void);
const Backend *backend_cpu_half_bf16(void);

static inline const Backend *backend_cpu(void) {
    switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_avx512_core_amx:
    case dnnl_cpu_isa_avx512_core_bf16: return backend_cpu_bf16();
    case dnnl_cpu_isa_avx512_core_vnni:
    case dnnl_cpu_isa_avx512_core: return backend_cpu_avx512();
    default: return backend_cpu_v3();
    }
}

/* The backend for a dtype: with activations in bfloat16 for DTYPE_BF16. Its products are of bfloat16 operands, or of float32
 * operands if this processor has no bfloat16 arithmetic. */
static inline const Backend *backend_cpu_for(Dtype dtype) {
    const Backend *b = backend_cpu();
    if (dtype != DTYPE_BF16) return b;
    if (b == backend_cpu_bf16()) return backend_cpu_half_bf16();
    return b == backend_cpu_avx512() ? backend_cpu_half_avx512() : backend_cpu_half_v3();
}

/* The instruction set of the backend that backend_cpu() returns, for messages. */
static inline const char *backend_cpu_level(void) {
    const Backend *b = backend_cpu();
    if (b == backend_cpu_bf16())
        return dnnl_get_effective_cpu_isa() == dnnl_cpu_isa_avx512_core_amx ? "AVX-512 with bfloat16, AMX"
                                                                            : "AVX-512 with bfloat16";
    return b == backend_cpu_avx512() ? "AVX-512" : "AVX2";
}

#endif
