/* dora.cuh - lengths of adapted rows and their scaling on the GPU (see Dora in model/backend.h).
 *
 *   norm       one block per row; sums in float32, in an order that depends on the shape alone
 *   forward    one thread per element of the adapted channels
 *   backward   one thread per element for dscaled; for dmagnitude a block of 32 channels and 8 rows at a time, whose
 *              partial sums are added in order
 *
 *     cuda_dora_norm<bf16>(d, &dora);
 */
#ifndef LLMC_CUDA_DORA_CUH
#define LLMC_CUDA_DORA_CUH

#include "../model/backend.h" /* Dora, LORA_PARTS */
#include "common.cuh"         /* to_float, CUDA_LAUNCHED, Device, from_float, ... */
#include "elementwise.cuh"    /* ELEMENT_THREADS, FOR_WORDS */
#include "ptx.cuh"            /* LAUNCH */
#include "quantized.cuh"      /* quant_decoded */

enum { DORA_THREADS = 128, DORA_CHANNELS = 32, DORA_ROWS = 8 };

/* The parts of a Dora, for kernels. */
struct DoraParts {
    int parts, outputs, first[LORA_PARTS], count[LORA_PARTS];
};
static inline DoraParts dora_parts(const Dora *l) {
    DoraParts p = {l->parts, 0, {0}, {0}};
    for (int i = 0; i < l->parts; i++) {
        p.first[i] = l->first[i];
        p.count[i] = l->count[i];
        p.outputs += l->count[i];
    }
    return p;
}

/* The channel and the part of output i. */
__device__ static inline int dora_channel(const DoraParts &p, int i, int &part) {
    part = 0;
    while (i >= p.count[part]) i -= p.count[part++];
    return p.first[part] + i;
}

/* The output of a channel, or -1. */
__device__ static inline int dora_output(const DoraParts &p, int channel) {
    for (int part = 0, at = 0; part < p.parts; at += p.count[part++])
        if (channel >= p.first[part] && channel < p.first[part] + p.count[part]) return at + channel - p.first[part];
    return -1;
}

template <typename T>
__global__ void dora_norm_kernel(float *__restrict__ norm, const T *__restrict__ w, const T *__restrict__ a,
                                 const T *__restrict__ b, DoraParts p, int in, int rank, float scale) {
    int part;
    const int c = dora_channel(p, (int)blockIdx.x, part);
    float sum = 0;
    for (int j = (int)threadIdx.x; j < in; j += DORA_THREADS) {
        float x = to_float(w[(size_t)c * in + j]), add = 0;
        for (int k = 0; k < rank; k++)
            add = fmaf(to_float(b[(size_t)blockIdx.x * rank + k]), to_float(a[(size_t)(part * rank + k) * in + j]), add);
        x = fmaf(scale, add, x);
        sum = fmaf(x, x, sum);
    }
    sum = block_sum<DORA_THREADS>(sum);
    if (threadIdx.x == 0) norm[blockIdx.x] = sum > 0 ? sqrtf(sum) : 1.0f;
}

template <typename T> static void cuda_dora_norm(Device *d, const Dora *l) {
    const DoraParts p = dora_parts(l);
    const T *w = (const T *)(l->matrix.parts ? quant_decoded<T>(d, &l->matrix, l->in, l->stride) : l->w);
    if (!w || p.outputs == 0) return;
    LAUNCH((dora_norm_kernel<T>), (unsigned)p.outputs, DORA_THREADS, 0, d->stream, (float *)l->norm, w, (const T *)l->a,
           (const T *)l->b, p, l->in, l->rank, l->scale);
    CUDA_LAUNCHED(d, "dora_norm", "%d rows of %d", p.outputs, l->in);
}

template <typename T>
__global__ void dora_forward_kernel(T *__restrict__ out, T *__restrict__ u, const T *__restrict__ bias,
                                    const T *__restrict__ magnitude, const float *__restrict__ norm, DoraParts p,
                                    int stride, size_t n) {
    FOR_WORDS(at, n) {
        const int i = (int)(at % (size_t)p.outputs);
        int part;
        const int c = dora_channel(p, i, part);
        T *to = out + at / (size_t)p.outputs * (size_t)stride + c;
        const float y = to_float(*to), plain = y - (bias ? to_float(bias[c]) : 0.0f);
        *to = from_float<T>(fmaf(to_float(magnitude[i]) / norm[i] - 1, plain, y));
        if (u) u[at] = from_float<T>(plain);
    }
}

template <typename T> static void cuda_dora_forward(Device *d, const Dora *l) {
    const DoraParts p = dora_parts(l);
    const size_t n = (size_t)l->rows * (size_t)p.outputs;
    if (n == 0) return;
    LAUNCH((dora_forward_kernel<T>), cuda_blocks(d, n, ELEMENT_THREADS), ELEMENT_THREADS, 0, d->stream, (T *)l->out,
           (T *)l->u, (const T *)l->bias, (const T *)l->magnitude, (const float *)l->norm, p, l->stride, n);
    CUDA_LAUNCHED(d, "dora_forward", "N %d, %d channels", l->rows, p.outputs);
}

template <typename T>
__global__ void dora_scale_kernel(T *__restrict__ dscaled, const T *__restrict__ dout, const T *__restrict__ magnitude,
                                  const float *__restrict__ norm, DoraParts p, int stride, size_t n) {
    FOR_WORDS(at, n) {
        const int i = dora_output(p, (int)(at % (size_t)stride));
        const float x = to_float(dout[at]);
        dscaled[at] = from_float<T>(i < 0 ? x : to_float(magnitude[i]) / norm[i] * x);
    }
}

/* dmagnitude[i] += sum over rows of dout u / norm */
template <typename T>
__global__ void dora_magnitude_kernel(float *__restrict__ dmagnitude, const T *__restrict__ dout,
                                      const T *__restrict__ u, const float *__restrict__ norm, DoraParts p, int stride,
                                      int N) {
    __shared__ float sums[DORA_ROWS][DORA_CHANNELS];
    const int lane = (int)threadIdx.x % DORA_CHANNELS, row = (int)threadIdx.x / DORA_CHANNELS;
    const int i = (int)blockIdx.x * DORA_CHANNELS + lane;
    float sum = 0;
    if (i < p.outputs) {
        int part;
        const int c = dora_channel(p, i, part);
        for (int r = row; r < N; r += DORA_ROWS)
            sum = fmaf(to_float(dout[(size_t)r * stride + c]), to_float(u[(size_t)r * p.outputs + i]), sum);
    }
    sums[row][lane] = sum;
    __syncthreads();
    if (row || i >= p.outputs) return;
    for (int r = 1; r < DORA_ROWS; r++) sum += sums[r][lane];
    dmagnitude[i] += sum / norm[i];
}

template <typename T> static void cuda_dora_backward(Device *d, const Dora *l) {
    const DoraParts p = dora_parts(l);
    const size_t n = (size_t)l->rows * (size_t)l->stride;
    if (n == 0 || p.outputs == 0) return;
    LAUNCH((dora_scale_kernel<T>), cuda_blocks(d, n, ELEMENT_THREADS), ELEMENT_THREADS, 0, d->stream, (T *)l->dscaled,
           (const T *)l->dout, (const T *)l->magnitude, (const float *)l->norm, p, l->stride, n);
    CUDA_LAUNCHED(d, "dora_scale", "N %d, %d channels", l->rows, l->stride);
    LAUNCH((dora_magnitude_kernel<T>), (unsigned)((p.outputs + DORA_CHANNELS - 1) / DORA_CHANNELS),
           DORA_CHANNELS * DORA_ROWS, 0, d->stream, (float *)l->dmagnitude, (const T *)l->dout, (const T *)l->u,
           (const float *)l->norm, p, l->stride, l->rows);
    CUDA_LAUNCHED(d, "dora_magnitude", "N %d, %d channels", l->rows, p.outputs);
}

#endif
