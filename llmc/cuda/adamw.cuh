/* adamw.cuh - the optimizer's pass over the parameters, and the global norm of the gradient.
 *
 * AdamW reads the gradient, the moments and the float32 master weight once, and writes the moments, the master weight
 * and the bf16 weight that the model computes with. The bf16 weight is the master rounded stochastically: up or down
 * with probabilities such that its expectation is the master (Gupta et al. 2015, "Deep learning with limited numerical
 * precision", section 3.1), so that updates far below half a unit in the last place are not lost. The 16 random bits of
 * parameter i at step t come from Philox at (t, i / 8): they are the same for every grid, device and number of ranks,
 * and after a resume.
 *
 * The norm is summed in double over fixed parts, which are added in order.
 */
#ifndef LLMC_CUDA_ADAMW_CUH
#define LLMC_CUDA_ADAMW_CUH

#include "../model/backend.h" /* AdamW */
#include "common.cuh"         /* lane_load, lane_store, cuda_ceil, CUDA_LAUNCHED, ... */
#include "ptx.cuh"            /* LAUNCH, wide_load */

enum { ADAMW_THREADS = 256, NORM2_THREADS = 512, NORM2_PART = 1 << 16 };

typedef struct AdamWFactors { /* the formula's constants, computed on the host in double */
    float b1, b2, eps, scale, step_size, correction, keep;
} AdamWFactors;

/* Four random words, from which the eight parameters 8 block .. 8 block + 7 take 16 bits each. */
__device__ static inline void rounding_bits(uint32_t (&c)[4], uint64_t block, uint64_t step) {
    c[0] = (uint32_t)block;
    c[1] = (uint32_t)(block >> 32);
    c[2] = (uint32_t)step;
    c[3] = (uint32_t)(step >> 32);
    cuda_philox(c, 0x51D0C0DEu, 0x0A57E12Du);
}
__device__ static inline uint32_t rounding_share(const uint32_t (&c)[4], int k) {
    return k % 2 ? c[k / 2] >> 16 : c[k / 2] & 0xffffu;
}

/* Rounds x to one of its two bf16 neighbours: away from zero with probability (its lower 16 bits) / 2^16. */
__device__ static inline bf16 round_stochastic(float x, uint32_t bits16) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return __float2bfloat16_rn(x); /* infinity, NaN */
    return __float2bfloat16_rn(__uint_as_float((bits + bits16) & 0xffff0000u));
}

/* Updates m, v and p of one parameter. */
__device__ static inline void adamw_one(float &p, float &m, float &v, float grad, const AdamWFactors &f) {
    const float g = grad * f.scale;
    m = f.b1 * m + (1.0f - f.b1) * g;
    v = f.b2 * v + (1.0f - f.b2) * g * g;
    p = p * f.keep - f.step_size * m / (sqrtf(v) * f.correction + f.eps);
}

/* W parameters per thread: 8 with one Philox block, or 1. first: index of weights[0] among the model's parameters. */
template <typename T, int W>
__global__ void adamw_kernel(T *__restrict__ weights, float *__restrict__ master, const float *__restrict__ grad,
                             float *__restrict__ m, float *__restrict__ v, size_t n, uint64_t first, uint64_t step,
                             AdamWFactors f) {
    const size_t i = ((size_t)blockIdx.x * ADAMW_THREADS + threadIdx.x) * W;
    if (i >= n) return;
    float p[W], pm[W], pv[W], g[W];
    if (master) lane_load(p, (const float *)master + i);
    else lane_load(p, (const T *)weights + i);
    lane_load(g, grad + i);
    lane_load(pm, (const float *)m + i);
    lane_load(pv, (const float *)v + i);
#pragma unroll
    for (int k = 0; k < W; k++) adamw_one(p[k], pm[k], pv[k], g[k], f);
    lane_store(m + i, pm);
    lane_store(v + i, pv);
    if (master) lane_store(master + i, p);
    if constexpr (sizeof(T) < sizeof(float)) {
        uint32_t c[4];
        rounding_bits(c, (first + i) / 8, step);
#pragma unroll
        for (int k = 0; k < W; k++)
            p[k] = to_float(round_stochastic(p[k], rounding_share(c, W == 8 ? k : (int)((first + i) % 8))));
    }
    lane_store(weights + i, p);
}

template <typename T> static void cuda_adamw(Device *d, const AdamW *a) {
    constexpr int W = 8;
    if (a->n == 0) return;
    AdamWFactors f;
    f.b1 = a->beta1;
    f.b2 = a->beta2;
    f.eps = a->eps;
    f.scale = a->grad_scale;
    f.step_size = (float)((double)a->lr / (1.0 - pow((double)a->beta1, (double)a->step)));
    f.correction = (float)(1.0 / sqrt(1.0 - pow((double)a->beta2, (double)a->step)));
    f.keep = 1.0f - a->lr * a->weight_decay;
    T *weights = (T *)a->weights;
    float *master = (float *)a->master, *m = (float *)a->m, *v = (float *)a->v;
    const float *grad = (const float *)a->grad;
    const uint64_t first = (uint64_t)a->first, step = (uint64_t)a->step;
    /* groups of eight start at the borders of the random blocks; the remainder at the end is updated one by one */
    const bool wide = first % W == 0 && cuda_wide<float>(W, master, grad, m, v) && cuda_wide<T>(W, weights);
    const size_t most = wide ? a->n / W * W : 0;
    if (most > 0) {
        LAUNCH((adamw_kernel<T, W>), (unsigned)cuda_ceil(most / W, ADAMW_THREADS), ADAMW_THREADS, 0, d->stream, weights,
               master, grad, m, v, most, first, step, f);
    }
    if (most < a->n) {
        LAUNCH((adamw_kernel<T, 1>), (unsigned)cuda_ceil(a->n - most, ADAMW_THREADS), ADAMW_THREADS, 0, d->stream,
               weights + most, master ? master + most : master, grad + most, m + most, v + most, a->n - most,
               first + most, step, f);
    }
    CUDA_LAUNCHED(d, "adamw", "n %zu, step %lld", a->n, (long long)a->step);
}

/* partial[part] = sum of squares of a part of NORM2_PART floats */
static __global__ void square_sum_kernel(double *__restrict__ partial, const float *__restrict__ x, size_t n) {
    const size_t first = (size_t)blockIdx.x * NORM2_PART, last = n - first < NORM2_PART ? n : first + NORM2_PART;
    double sum = 0;
    if ((uintptr_t)x % 16 == 0 && last - first == NORM2_PART) {
        for (size_t i = first + threadIdx.x * 4; i < last; i += NORM2_THREADS * 4) {
            const Wide<float> word = wide_load(x + i);
#pragma unroll
            for (int k = 0; k < 4; k++) sum += (double)word.v[k] * (double)word.v[k];
        }
    } else {
        for (size_t i = first + threadIdx.x; i < last; i += NORM2_THREADS) sum += (double)x[i] * (double)x[i];
    }
    sum = block_sum<NORM2_THREADS>(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void square_total_kernel(double *total, const double *__restrict__ partial, int parts) {
    double sum = 0;
    for (int part = threadIdx.x; part < parts; part += NORM2_THREADS) sum += partial[part];
    sum = block_sum<NORM2_THREADS>(sum);
    if (threadIdx.x == 0) *total = sum;
}

/* Returns a pointer to the sum of squares on the device, or NULL after a failure. */
static inline double *square_sum_launch(Device *d, const float *x, size_t n) {
    const size_t parts = cuda_ceil(n, NORM2_PART);
    double *total = cuda_scratch_of<double>(d, parts + 1, "the norm of the gradient");
    if (!total) return NULL;
    if (parts > 0) {
        LAUNCH(square_sum_kernel, (unsigned)parts, NORM2_THREADS, 0, d->stream, total + 1, x, n);
    }
    LAUNCH(square_total_kernel, 1, NORM2_THREADS, 0, d->stream, total, total + 1, (int)parts);
    CUDA_LAUNCHED(d, "square_sum", "n %zu", n);
    return total;
}

#endif
