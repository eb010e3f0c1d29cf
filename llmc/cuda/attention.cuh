/* attention.cuh - attention of backend.h on the GPU: the choice of kernels for each problem.
 *
 *   segments.cuh           how blocks find their work in segments stored on the device
 *   attention_mma.cuh      bf16 on tensor cores: head sizes up to 128 that are multiples of 8
 *   attention_plain.cuh    float32 arithmetic: any head size up to 256
 *   attention_decode.cuh   few queries per segment (decode), split over the keys; the key/value cache
 *
 * The choice depends on shapes alone: the host never reads the segments. A batch with at most ATTENTION_FEW rows per
 * segment on average is treated as decode. Rows in no segment are set to 0. No result depends on the order in which
 * blocks run. Head sizes above 256 and head counts that are not a multiple of kv_heads set the device's error.
 */
#ifndef LLMC_CUDA_ATTENTION_CUH
#define LLMC_CUDA_ATTENTION_CUH

#include "../model/backend.h"   /* Attention */
#include "attention_decode.cuh" /* decode_launch */
#include "attention_mma.cuh"    /* MMA_ROWS, MMA_THREADS, attention_forward_mma_kernel, ... */
#include "attention_plain.cuh"  /* PLAIN, PLAIN_THREADS, plain_backward_bytes, attention_forward_plain_kernel, ... */
#include "common.cuh"           /* Device, cuda_wide, CUDA_LAUNCHED, cuda_fail, ... */
#include "ptx.cuh"              /* LAUNCH, SHARED_DYNAMIC */
#include "segments.cuh"         /* halves_of, attention_has_extras, outside_zero, Halves, ... */

enum {
    ATTENTION_FEW = 2,    /* rows per segment up to which a batch is decode */
    ATTENTION_LONG = 256, /* rows per segment from which strips are long */
};

static inline bool attention_is_decode(const Attention *a) {
    return (int64_t)a->rows <= (int64_t)ATTENTION_FEW * a->segments;
}

static inline bool attention_check(Device *d, const Attention *a) {
    if (a->heads % a->kv_heads || a->head_size < 1 || a->head_size > 256)
        return cuda_fail(
            d,
            "attention: %d heads of size %d over %d key heads; heads must be a multiple of key heads, of size 1 to 256",
            a->heads, a->head_size, a->kv_heads);
    return !d->failed;
}

/* True if the tensor-core kernels support this problem. */
template <typename T> static inline bool attention_on_tensor_cores(const Attention *a) {
    if constexpr (sizeof(T) != 2) return false;
    return a->head_size <= 128 && a->q_stride % 8 == 0 && a->kv_stride % 8 == 0 &&
           cuda_wide<T>((size_t)a->head_size, a->q, a->k, a->v, a->out);
}

/* Requests dynamic shared memory for the kernel, which CUDA requires above 48 KiB. */
template <typename Kernel> static inline bool shared_ask(Device *d, Kernel *kernel, size_t bytes, int head_size) {
    if (bytes > d->shared_limit)
        return cuda_fail(d, "attention: head size %d needs %zu bytes of shared memory per block, this device has %zu",
                         head_size, bytes, d->shared_limit);
    if (bytes <= 48 * 1024) return true;
    return CUDA_CHECK(d, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                      "head size %d, %zu bytes", head_size, bytes);
}

/* One launch of an attention kernel over (strips of `strip_rows` rows, grid_heads). */
#define ATTENTION_LAUNCH(kernel, strip_rows, grid_heads, bytes, ...)                                                   \
    do {                                                                                                               \
        if (!shared_ask(d, &kernel, bytes, a->head_size)) return;                                                      \
        LAUNCH((kernel), dim3(strips_most(a, strip_rows), (unsigned)(grid_heads)), threads, bytes, d->stream,          \
               __VA_ARGS__);                                                                                           \
        CUDA_LAUNCHED(d, #kernel, "N %d, S %d, H %d/%d, D %d", a->rows, a->segments, a->heads, a->kv_heads,            \
                      a->head_size);                                                                                   \
    } while (0)

/* ---- forward --------------------------------------------------------------------------------------------------- */

template <int D, int M, bool EXTRAS> static inline void mma_forward(Device *d, const Attention *a) {
    const unsigned threads = MMA_THREADS;
    ATTENTION_LAUNCH((attention_forward_mma_kernel<D, M, EXTRAS>), MMA_ROWS * M, a->heads, (mma_forward_bytes<D, M>()),
                     *a);
}

/* Strips of 128 rows read each tile half as often as strips of 64, which pays if segments are long. A row's result is
 * the same in both. */
template <int D, bool EXTRAS> static inline void mma_forward_strips(Device *d, const Attention *a) {
    if (a->rows >= ATTENTION_LONG * a->segments) mma_forward<D, 2, EXTRAS>(d, a);
    else mma_forward<D, 1, EXTRAS>(d, a);
}

template <typename T, int D, bool EXTRAS> static inline void plain_forward(Device *d, const Attention *a) {
    const unsigned threads = PLAIN_THREADS;
    ATTENTION_LAUNCH((attention_forward_plain_kernel<T, D, EXTRAS>), PLAIN, a->heads, plain_forward_bytes<D>(), *a);
}

template <typename T, bool EXTRAS> static inline void attention_forward_of(Device *d, const Attention *a) {
    const int D = a->head_size;
    if (attention_is_decode(a)) {
        if (D <= 32) decode_launch<T, 32, EXTRAS>(d, a);
        else if (D <= 64) decode_launch<T, 64, EXTRAS>(d, a);
        else if (D <= 128) decode_launch<T, 128, EXTRAS>(d, a);
        else decode_launch<T, 256, EXTRAS>(d, a);
    } else if (attention_on_tensor_cores<T>(a)) {
        if (D <= 32) mma_forward_strips<32, EXTRAS>(d, a);
        else if (D <= 64) mma_forward_strips<64, EXTRAS>(d, a);
        else if (D <= 96) mma_forward_strips<96, EXTRAS>(d, a);
        else mma_forward_strips<128, EXTRAS>(d, a);
    } else {
        if (D <= 32) plain_forward<T, 32, EXTRAS>(d, a);
        else if (D <= 64) plain_forward<T, 64, EXTRAS>(d, a);
        else if (D <= 128) plain_forward<T, 128, EXTRAS>(d, a);
        else plain_forward<T, 256, EXTRAS>(d, a);
    }
}

/* Computes out and lse of every row; see Attention in backend.h. */
template <typename T> static inline void cuda_attention_forward(Device *d, const Attention *a) {
    if (a->rows == 0 || !attention_check(d, a)) return;
    const int width = a->heads * a->head_size;
    outside_zero(d, a, halves_of((T *)a->out, width, width), halves_of((float *)a->lse, a->heads, a->heads), Halves{});
    if (a->segments == 0) return;
    if (attention_has_extras(a)) attention_forward_of<T, true>(d, a);
    else attention_forward_of<T, false>(d, a);
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

/* delta[row,h] = sum over d of out dout, which equals the sum over keys of P dP. Grid (rows). Shared memory: columns /
 * W floats. Each thread takes W channels; then one thread per head adds up the sums. */
template <typename T, int W>
__global__ static void attention_delta_kernel(float *__restrict__ delta, const T *__restrict__ out,
                                              const T *__restrict__ dout, int heads, int head_size) {
    SHARED_DYNAMIC(float, part);
    const int width = heads * head_size, words = head_size / W;
    const size_t row = blockIdx.x;
    for (int i = (int)threadIdx.x; i < width / W; i += (int)blockDim.x) {
        float x[W], y[W], sum = 0;
        lane_load<W>(x, out + row * width + i * W);
        lane_load<W>(y, dout + row * width + i * W);
#pragma unroll
        for (int k = 0; k < W; k++) sum = fmaf(x[k], y[k], sum);
        part[i] = sum;
    }
    __syncthreads();
    for (int h = (int)threadIdx.x; h < heads; h += (int)blockDim.x) {
        float sum = 0;
        for (int i = 0; i < words; i++) sum += part[h * words + i];
        delta[row * heads + h] = sum;
    }
}

template <typename T> static inline void attention_delta(Device *d, const Attention *a, float *delta) {
    constexpr int W = 16 / (int)sizeof(T);
    const int width = a->heads * a->head_size;
    const T *out = (const T *)a->out, *dout = (const T *)a->dout;
    if (cuda_wide<T>((size_t)a->head_size, out, dout))
        LAUNCH((attention_delta_kernel<T, W>), (unsigned)a->rows, 128, (size_t)width / W * sizeof(float), d->stream,
               delta, out, dout, a->heads, a->head_size);
    else
        LAUNCH((attention_delta_kernel<T, 1>), (unsigned)a->rows, 128, (size_t)width * sizeof(float), d->stream, delta,
               out, dout, a->heads, a->head_size);
    CUDA_LAUNCHED(d, "attention_delta_kernel", "N %d, H %d, D %d", a->rows, a->heads, a->head_size);
}

template <int D, bool EXTRAS> static inline void mma_backward(Device *d, const Attention *a, const float *delta) {
    const unsigned threads = MMA_THREADS;
    ATTENTION_LAUNCH((attention_keys_mma_kernel<D, EXTRAS>), MMA_ROWS, a->kv_heads, mma_keys_bytes<D>(), *a, delta);
    ATTENTION_LAUNCH((attention_queries_mma_kernel<D, EXTRAS>), MMA_ROWS, a->heads, mma_queries_bytes<D>(), *a, delta);
}

template <typename T, int D, bool EXTRAS>
static inline void plain_backward(Device *d, const Attention *a, const float *delta) {
    const unsigned threads = PLAIN_THREADS;
    ATTENTION_LAUNCH((attention_keys_plain_kernel<T, D, EXTRAS>), PLAIN, a->kv_heads, plain_backward_bytes<D>(), *a,
                     delta);
    ATTENTION_LAUNCH((attention_queries_plain_kernel<T, D, EXTRAS>), PLAIN, a->heads, plain_backward_bytes<D>(), *a,
                     delta);
}

template <typename T, bool EXTRAS>
static inline void attention_backward_of(Device *d, const Attention *a, const float *delta) {
    const int D = a->head_size;
    if (attention_on_tensor_cores<T>(a) && cuda_wide<T>((size_t)D, a->dout, a->dq, a->dk, a->dv)) {
        if (D <= 32) mma_backward<32, EXTRAS>(d, a, delta);
        else if (D <= 64) mma_backward<64, EXTRAS>(d, a, delta);
        else if (D <= 96) mma_backward<96, EXTRAS>(d, a, delta);
        else mma_backward<128, EXTRAS>(d, a, delta);
    } else {
        if (D <= 32) plain_backward<T, 32, EXTRAS>(d, a, delta);
        else if (D <= 64) plain_backward<T, 64, EXTRAS>(d, a, delta);
        else if (D <= 128) plain_backward<T, 128, EXTRAS>(d, a, delta);
        else plain_backward<T, 256, EXTRAS>(d, a, delta);
    }
}

/* Computes dq, dk and dv of every row from dout, and from out and lse of the forward pass; see Attention in backend.h.
 * The keys are the batch's own rows, and a prefix is in the segment's family (batch.h). */
template <typename T> static inline void cuda_attention_backward(Device *d, const Attention *a) {
    if (a->rows == 0 || !attention_check(d, a)) return;
    const int kv_width = a->kv_heads * a->head_size;
    outside_zero(d, a, halves_of((T *)a->dq, a->q_stride, a->heads * a->head_size),
                 halves_of((T *)a->dk, a->kv_stride, kv_width), halves_of((T *)a->dv, a->kv_stride, kv_width));
    if (a->segments == 0) return;
    float *delta = cuda_scratch_of<float>(d, (size_t)a->rows * a->heads, "attention's backward pass");
    if (!delta) return;
    attention_delta<T>(d, a, delta);
    if (attention_has_extras(a)) attention_backward_of<T, true>(d, a, delta);
    else attention_backward_of<T, false>(d, a, delta);
}

#undef ATTENTION_LAUNCH

#endif
