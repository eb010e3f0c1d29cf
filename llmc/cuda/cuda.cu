/* cuda.cu - the CUDA backend: the only translation unit that nvcc compiles, built as llmc_cuda.so.
 *
 *   common.cuh                       the device, checked errors, scratch memory, reductions
 *   queue.cuh                        deferred operations; a decode step runs as one graph
 *   matmul.cuh                       matrix products through cuBLASLt
 *   lora.cuh                         low-rank adapters
 *   norm.cuh  elementwise.cuh        layernorm and RMSNorm; embedding, GELU, gates, gather, ...
 *   rotary.cuh                       rotary positions, and the norm of queries and keys
 *   adamw.cuh                        the optimizer step
 *   attention.cuh                    attention over segments with shared prefixes, and decode
 *   head.cuh  sample.cuh             log-probabilities, entropy and their gradient; sampling
 *
 * The programs do not link against this library. With --device cuda, device.h opens it and looks up one C symbol,
 * llmc_cuda_backend(). Programs therefore start in a millisecond and also run on machines without CUDA.
 *
 * With --dtype bf16, weights and activations are stored as bf16 and the optimizer keeps float32 master weights. With
 * --dtype float32 everything is float32, without TF32. Device memory comes from the driver's stream-ordered pool, which
 * is configured never to release memory: after the first step of a run there are no more allocations from the driver.
 */
#include "../base/error.h"      /* Error, error_set */
#include "../base/launch.h"     /* launch_of_environment */
#include "../model/backend.h"   /* Backend, Weights, DTYPE_BF16, DTYPE_FLOAT32, ... */
#include "adamw.cuh"            /* cuda_adamw, square_sum_launch */
#include "attention.cuh"        /* cuda_attention_backward, cuda_attention_forward */
#include "attention_decode.cuh" /* cuda_kv_store */
#include "common.cuh"           /* Device, bf16, CUDA_CHECK, cuda_fail, ... */
#include "divergence.cuh"       /* cuda_divergence, cuda_divergence_scratch */
#include "dora.cuh"             /* cuda_dora_backward, cuda_dora_forward, cuda_dora_norm */
#include "elementwise.cuh"      /* cuda_embed_forward, cuda_gelu_backward, cuda_add, cuda_embed_backward, ... */
#include "head.cuh"             /* cuda_head, cuda_head_scratch, cuda_logits, cuda_value_backward, ... */
#include "lora.cuh"             /* cuda_lora_backward, cuda_lora_forward, cuda_lora_scratch */
#include "matmul.cuh"           /* cuda_linear_backward, LT_WORKSPACE_BYTES, MatmulPlan, cuda_linear_forward, ... */
#include "norm.cuh"             /* NORM_PARTS_MOST, NORM_PART_ROWS, cuda_norm_backward, cuda_norm_forward, ... */
#include "quantized.cuh"        /* cuda_quant_backward, cuda_quant_forward, cuda_quant_scratch */
#include "queue.cuh"            /* Deferred, queue_flush, queue_download, queue_upload, ... */
#include "rotary.cuh"           /* cuda_rotary_backward, cuda_rotary_forward, cuda_rotary_table */
#include "sample.cuh"           /* cuda_sample */

/* ---- the device -------------------------------------------------------------------------------------------------- */

static void device_close(Device *d) {
    queue_close(d);
    if (d->plans) matmul_plans_clear(d);
    delete d->plans;
    if (d->lt) cublasLtDestroy(d->lt);
    cuda_scratch_begin(d);
    if (d->scratch.block) cudaFreeAsync(d->scratch.block, d->stream);
    if (d->lt_workspace) cudaFreeAsync(d->lt_workspace, d->stream);
    for (auto &memory : d->held) cudaFreeAsync(memory.first, d->stream);
    if (d->stream) {
        cudaStreamSynchronize(d->stream);
        cudaStreamDestroy(d->stream);
    }
    delete d;
}

/* Selects the GPU by the local rank, modulo the number of GPUs. */
static bool device_choose(Device *d) {
    int count = 0, version = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0) {
        (void)cudaGetLastError();
        (void)cudaDriverGetVersion(&version);
        return cuda_fail(d, "--device cuda: %s; use --device cpu",
                         version == 0            ? "this machine has no NVIDIA driver"
                         : status != cudaSuccess ? cudaGetErrorString(status)
                                                 : "this machine has no NVIDIA GPU");
    }
    d->index = launch_of_environment().local_rank % count;
    return CUDA_CHECK(d, cudaSetDevice(d->index), "device %d of %d", d->index, count);
}

/* Checks that the library contains code for this GPU. */
static bool device_suits(Device *d, const cudaDeviceProp *about) {
    cudaFuncAttributes kernel;
    if (cudaFuncGetAttributes(&kernel, parts_sum_kernel) == cudaSuccess) return true;
    (void)cudaGetLastError();
    return cuda_fail(
        d, "--device cuda: llmc_cuda.so has no code for this GPU, %s (sm_%d%d); build it with NVCC_ARCHS=%d%d",
        about->name, about->major, about->minor, about->major, about->minor);
}

static bool device_open(Device **device, Dtype dtype, Error *e) {
    Device *d = new Device();
    cudaDeviceProp about;
    cudaMemPool_t pool;
    uint64_t keep = UINT64_MAX;
    int shared = 0;
    d->dtype = dtype;
    d->lt_workspace_bytes = LT_WORKSPACE_BYTES;
    bool ok = device_choose(d) && CUDA_CHECK(d, cudaGetDeviceProperties(&about, d->index), "device %d", d->index) &&
              device_suits(d, &about);
    if (ok) {
        d->processors = about.multiProcessorCount;
        d->major = about.major;
        d->minor = about.minor;
    }
    ok = ok && CUDA_CHECK(d, cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, d->index), "") &&
         CUDA_CHECK(d, cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "") &&
         CUDA_CHECK(d, cudaDeviceGetDefaultMemPool(&pool, d->index), "") &&
         CUDA_CHECK(d, cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "") &&
         CUDA_CHECK(d, cudaMallocAsync(&d->lt_workspace, d->lt_workspace_bytes, d->stream), "%zu bytes",
                    d->lt_workspace_bytes) &&
         CUBLAS_CHECK(d, cublasLtCreate(&d->lt), "") && queue_open(d);
    d->shared_limit = (size_t)shared;
    if (!ok) {
        if (e) *e = d->error;
        device_close(d);
        return false;
    }
    d->plans = new MatmulPlan();
    d->queue->at_once = d->queue->graphs = true;
    *device = d;
    return true;
}

static bool device_sync(Device *d, Error *e) {
    queue_wait(d);
    return d->failed ? error_set(e, "%s", d->error.text) : true;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* The option that reduces the memory used for `what`. */
static const char *memory_advice(const char *what) {
    if (strstr(what, "activation") || strstr(what, "logits")) return "lower --micro-tokens or raise --recompute";
    if (strstr(what, "cache")) return "lower --slots";
    if (strstr(what, "gradient") || strstr(what, "moment") || strstr(what, "master"))
        return "train on more ranks with --zero 1 or 2, or train a smaller model";
    return "use --dtype bf16 or a smaller model";
}

static void *device_alloc(Device *d, size_t bytes, const char *what, Error *e) {
    void *memory = NULL;
    size_t available = 0, total = 0;
    queue_flush(d);
    if (d->failed) {
        error_set(e, "%s", d->error.text);
        return NULL;
    }
    const cudaError_t status = cudaMallocAsync(&memory, bytes ? bytes : 1, d->stream);
    if (status == cudaSuccess) {
        d->held[memory] = bytes;
        d->alive += bytes;
        d->most = d->alive > d->most ? d->alive : d->most;
        return memory;
    }
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&available, &total);
    if (status == cudaErrorMemoryAllocation)
        error_set(e, "out of device memory: %s needs %zu bytes, the GPU has %zu of %zu free; %s", what, bytes,
                  available, total, memory_advice(what));
    else error_set(e, "cuda: cannot allocate %zu bytes for %s: %s", bytes, what, cudaGetErrorString(status));
    return NULL;
}

static void *device_alloc_zeroed(Device *d, size_t bytes, const char *what, Error *e) {
    void *memory = device_alloc(d, bytes, what, e);
    if (memory) Deferred<&set_bytes>::call(d, memory, bytes);
    return memory;
}

static void device_release(Device *d, void *memory) {
    auto known = d->held.find(memory);
    if (!memory || known == d->held.end()) return;
    queue_flush(d);
    d->alive -= known->second;
    d->held.erase(known);
    cudaFreeAsync(memory, d->stream);
}

static size_t device_scratch_bytes(Device *d) { return d->scratch.size + d->lt_workspace_bytes; }

/* The largest requests are the head's chunk of logits, the partial sums of a norm's gradients, adapters, and decoded
 * matrices. */
template <typename T> static size_t device_scratch_predict(Device *d, const ScratchUse *u) {
    const int rows = u->rows, logits = u->sampled > rows ? u->sampled : rows;
    const size_t sizes[] = {(size_t)norm_parts(rows, NORM_PART_ROWS, NORM_PARTS_MOST) * 2 * (size_t)u->widest *
                                sizeof(float),
                            cuda_head_scratch<T>(logits, u->padded_vocab), cuda_lora_scratch<T>(rows, u->adapters),
                            u->teacher_vocab ? cuda_divergence_scratch<T>(rows, u->padded_vocab, u->teacher_vocab) : 0,
                            cuda_quant_scratch<T>(u->quantized)};
    size_t most = 0;
    for (size_t size : sizes) most = size > most ? size : most;
    return d->lt_workspace_bytes + most;
}

static size_t device_memory_peak(Device *d) { return d->most + device_scratch_bytes(d); }

static void *device_stream(Device *d) {
    queue_flush(d);
    return d->stream;
}

/* Dense bf16 and float32 TFLOP/s of data-centre GPUs, from NVIDIA's data sheets. */
static double device_nominal_peak(Device *d) {
    static const struct {
        const char *name;
        double bf16, float32;
    } known[] = {{"H100 PCIe", 756, 51}, {"H100 NVL", 835, 60}, {"GH200", 989, 67},  {"H100", 989, 67},
                 {"H200", 989, 67},      {"H800", 989, 67},     {"A100", 312, 19.5}, {"A800", 312, 19.5},
                 {"B200", 2250, 75},     {"GB200", 2500, 80},   {"L40S", 362, 91.6}, {"A10", 125, 31.2},
                 {"RTX 4090", 165, 82.6}};
    cudaDeviceProp about;
    if (cudaGetDeviceProperties(&about, d->index) != cudaSuccess) return 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(about.name, known[i].name))
            return 1e12 * (d->dtype == DTYPE_BF16 ? known[i].bf16 : known[i].float32);
    return 0;
}

template <typename T> static double device_peak(Device *d) {
    queue_wait(d);
    if (d->peak == 0 && !d->failed) d->peak = matmul_peak<T>(d);
    return d->peak;
}

/* ---- weights ----------------------------------------------------------------------------------------------------- */

static const size_t WEIGHTS_CHUNK = 1 << 20;

/* Rounds to nearest on the host, which halves the bytes transferred. */
template <typename T> static void device_weights_upload(Device *d, Weights *weights, const float *host, size_t n) {
    if (sizeof(T) == sizeof(float)) {
        queue_upload(d, weights, host, n * sizeof(float));
        return;
    }
    std::vector<bf16> half(n < WEIGHTS_CHUNK ? n : WEIGHTS_CHUNK);
    for (size_t at = 0; at < n; at += WEIGHTS_CHUNK) {
        const size_t part = n - at < WEIGHTS_CHUNK ? n - at : WEIGHTS_CHUNK;
        for (size_t i = 0; i < part; i++) half[i] = __float2bfloat16_rn(host[at + i]);
        queue_upload(d, (bf16 *)weights + at, half.data(), part * sizeof(bf16));
    }
}

template <typename T> static void device_weights_download(Device *d, float *host, const Weights *weights, size_t n) {
    if (sizeof(T) == sizeof(float)) {
        queue_download(d, host, weights, n * sizeof(float));
        return;
    }
    std::vector<bf16> half(n < WEIGHTS_CHUNK ? n : WEIGHTS_CHUNK);
    for (size_t at = 0; at < n; at += WEIGHTS_CHUNK) {
        const size_t part = n - at < WEIGHTS_CHUNK ? n - at : WEIGHTS_CHUNK;
        queue_download(d, half.data(), (const bf16 *)weights + at, part * sizeof(bf16));
        for (size_t i = 0; i < part; i++) host[at + i] = __bfloat162float(half[i]);
    }
}

static void device_weights_release(Device *d, Weights *weights, size_t n) {
    (void)n;
    device_release(d, weights);
}

static double device_square_sum(Device *d, const Floats *x, size_t n) {
    double sum = NAN;
    queue_flush(d);
    cuda_scratch_begin(d);
    const double *total = d->failed ? NULL : square_sum_launch(d, (const float *)x, n);
    if (total) queue_download(d, &sum, total, sizeof sum);
    return d->failed ? (double)NAN : sum;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static Backend tables[2]; /* indexed by Dtype; filled by llmc_cuda_backend() */

/* Every batch begins with this operation. The operations of large batches run when they are called. */
template <typename T>
static void embed_forward_begins(Device *d, Acts *out, const Weights *wte, const Weights *wpe, const Ints *token,
                                 const Ints *position, float scale, int N, int C) {
    if (N > QUEUE_ROWS) queue_flush(d);
    d->queue->at_once = N > QUEUE_ROWS;
    Deferred<&cuda_embed_forward<T>>::call(d, out, wte, wpe, token, position, scale, N, C);
}

/* Runs linear_backward and the gelu_backward of its dx as one product. Returns false if they are not such a pair. */
template <typename T> static bool fuse_gelu_backward(Device *d, const char *first, const char *second) {
    auto [dx, dw, db, dout, x, w, N, IC, OC] = Deferred<&cuda_linear_backward<T>>::get(first);
    auto [dinout, pre, n] = Deferred<&cuda_gelu_backward<T>>::get(second);
    if (!dx || dinout != dx || n != (size_t)N * (size_t)IC) return false;
    cuda_linear_gelu_backward<T>(d, dx, dw, db, dout, x, w, pre, N, IC, OC);
    return true;
}

template <typename T> static bool device_open_as(Device **d, Dtype dtype, Error *e) {
    static char name[300];
    cudaDeviceProp about;
    if (!device_open(d, dtype, e)) return false;
    if (cudaGetDeviceProperties(&about, (*d)->index) == cudaSuccess) {
        snprintf(name, sizeof name, "cuda, %s", about.name);
        tables[dtype].name = name;
    }
    Queue *q = (*d)->queue;
    q->backward = Deferred<&cuda_linear_backward<T>>::run;
    q->gelu = Deferred<&cuda_gelu_backward<T>>::run;
    q->fuse = fuse_gelu_backward<T>;
    return true;
}

template <typename T> static Backend backend_table() {
    Backend b;
    memset(&b, 0, sizeof b);
    b.name = "cuda";
    b.weight_size = sizeof(T);
    b.act_size = sizeof(T);
    b.open = device_open_as<T>;
    b.close = device_close;
    b.sync = device_sync;
    b.alloc = device_alloc;
    b.alloc_zeroed = device_alloc_zeroed;
    b.release = device_release;
    b.scratch_bytes = device_scratch_bytes;
    b.scratch_predict = device_scratch_predict<T>;
    b.peak = device_peak<T>;
    b.nominal_peak = device_nominal_peak;
    b.memory_peak = device_memory_peak;
    b.stream = device_stream;
    b.zero = Deferred<&set_bytes>::call;
    b.upload = queue_upload;
    b.download = queue_download;
    b.weights_upload = device_weights_upload<T>;
    b.weights_download = device_weights_download<T>;
    b.weights_release = device_weights_release;
    b.embed_forward = embed_forward_begins<T>;
    b.square_sum = device_square_sum;
#define DEFER(operation)                                                                                               \
    b.operation = Deferred<&cuda_##operation<T>>::call;                                                                \
    Deferred<&cuda_##operation<T>>::name = #operation
    Deferred<&set_bytes>::name = "zero";
    Deferred<&copy_staged>::name = "upload";
    Deferred<&cuda_embed_forward<T>>::name = "embed_forward";
    DEFER(embed_backward);
    DEFER(noise_add);
    DEFER(norm_forward);
    DEFER(norm_backward);
    DEFER(linear_forward);
    DEFER(linear_backward);
    DEFER(linear_gelu_forward);
    DEFER(quant_forward);
    DEFER(quant_backward);
    DEFER(lora_forward);
    DEFER(lora_backward);
    DEFER(dora_norm);
    DEFER(dora_forward);
    DEFER(dora_backward);
    DEFER(gelu_forward);
    DEFER(gelu_backward);
    DEFER(gate_forward);
    DEFER(gate_backward);
    DEFER(rotary_table);
    DEFER(rotary_forward);
    DEFER(rotary_backward);
    DEFER(attention_forward);
    DEFER(attention_backward);
    DEFER(kv_store);
    DEFER(add);
    DEFER(gather_rows);
    DEFER(scatter_rows);
    DEFER(head);
    DEFER(divergence);
    DEFER(logits);
    DEFER(sample);
    DEFER(value_forward);
    DEFER(value_backward);
    DEFER(adamw);
#undef DEFER
    return b;
}

extern "C" __attribute__((visibility("default"))) const Backend *llmc_cuda_backend(size_t table_bytes, int dtype) {
    static_assert(DTYPE_FLOAT32 == 0 && DTYPE_BF16 == 1, "tables[] is indexed by Dtype");
    if (table_bytes != sizeof(Backend)) return NULL;
    if (!tables[0].name) {
        tables[DTYPE_FLOAT32] = backend_table<float>();
        tables[DTYPE_BF16] = backend_table<bf16>();
    }
    return &tables[dtype == DTYPE_BF16];
}
