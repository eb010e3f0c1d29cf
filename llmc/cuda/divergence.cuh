/* divergence.cuh - the divergence of two models' distributions on the GPU, with its gradient.
 *
 * The logits of both models exist only for one chunk of rows at a time, together at most as many as those of the head
 * (head.cuh). One kernel takes one row per block: it reads each model's logits for their normaliser, both for the sums of
 * the divergence, and once more for the gradient. cpu/divergence.h has the form that all kinds share.
 */
#ifndef LLMC_CUDA_DIVERGENCE_CUH
#define LLMC_CUDA_DIVERGENCE_CUH

#include "../model/backend.h" /* TokenDivergence, Head, TOKEN_FORWARD_KL, TOKEN_REVERSE_KL, ... */
#include "common.cuh"         /* block_sum, cuda_scratch_of, CUDA_LAUNCHED, Device, ... */
#include "head.cuh"           /* LogitSums, cuda_head_chunk_rows, logits_read, logit_cap */
#include "matmul.cuh"         /* aligned_rows, cuda_matmul_nt, cuda_matmul_nn, cuda_matmul_tn */
#include "ptx.cuh"            /* LAUNCH */

enum { DIVERGENCE_THREADS = 512 };

/* The maximum scratch memory of one call, in bytes. */
template <typename T> static inline size_t cuda_divergence_scratch(int rows, int padded_vocab, int teacher_vocab) {
    const size_t chunk = (size_t)cuda_head_chunk_rows(rows > 0 ? rows : 1, padded_vocab + teacher_vocab);
    return chunk * (size_t)(padded_vocab + teacher_vocab) * sizeof(float) +
           (sizeof(T) != sizeof(float) ? chunk * (size_t)padded_vocab * sizeof(T) : 0);
}

/* f and q of one token (cpu/divergence.h). */
struct DivergenceTerm {
    float f, q;
};

/* log(M / S) for M = b T + (1 - b) S and apart = log(T / S), without a power that overflows. */
__device__ static inline float divergence_mixture(float apart, float b) {
    const float small = expf(-fabsf(apart));
    return apart > 0 ? apart + logf(b + (1 - b) * small) : logf(b * small + (1 - b));
}

/* s, t: log S and log T of a token. A probability of 0 contributes nothing, and NaN makes the sums NaN. */
__device__ static inline DivergenceTerm divergence_term(TokenDivergenceKind kind, float s, float t, float b) {
    const float S = expf(s), T = expf(t);
    if (kind == TOKEN_FORWARD_KL) return DivergenceTerm{T > 0 ? T * (t - s) : T, -T};
    if (kind == TOKEN_TVD) return DivergenceTerm{0.5f * fabsf(S - T), 0.5f * (S > T ? S : S < T ? -S : S - T)};
    if (kind == TOKEN_REVERSE_KL) {
        const float f = S > 0 ? S * (s - t) : S;
        return DivergenceTerm{f, f};
    }
    if (kind == TOKEN_JSD) {
        const float mixture = divergence_mixture(t - s, b), own = S > 0 ? -(1 - b) * S * mixture : S;
        return DivergenceTerm{own + (T > 0 ? b * T * (t - s - mixture) : T), own};
    }
    if (kind == TOKEN_SKEW_FORWARD) {
        const float fall = t - s - divergence_mixture(t - s, b); /* log(T / M) */
        return DivergenceTerm{T > 0 ? T * fall : T, -(1 - b) * S * expf(fall)};
    }
    const float fall = -divergence_mixture(t - s, 1 - b), f = S > 0 ? S * fall : S; /* log(S / M) */
    return DivergenceTerm{f, f - b * S * expf(fall)};
}

/* A model's distribution: log-probabilities are capped(z[v]) * inverse_temperature - base. */
struct DivergenceSide {
    float cap, inverse_temperature, base;
};

__device__ static inline float divergence_capped(float z, float cap) { return cap > 0 ? logit_cap(z, cap) : z; }

__device__ static inline float divergence_logp(const DivergenceSide &side, float z) {
    return divergence_capped(z, side.cap) * side.inverse_temperature - side.base;
}

/* Statistics of the block's row; every thread gets them. */
__device__ static inline LogitSums divergence_read(const float *z, int V, float inverse_temperature, float cap) {
    return cap > 0 ? logits_read<DIVERGENCE_THREADS, true>(z, V, inverse_temperature, cap)
                   : logits_read<DIVERGENCE_THREADS, false>(z, V, inverse_temperature, cap);
}

__device__ static inline DivergenceSide divergence_side(const LogitSums &s, float inverse_temperature, float cap) {
    return DivergenceSide{cap, inverse_temperature, s.max * inverse_temperature + logf(s.sum)};
}

__device__ static inline float divergence_entropy(const LogitSums &s) { return logf(s.sum) - s.weighted / s.sum; }

/* Writes the teacher's logits of rows first .. first+gridDim.x-1 from their lists: log T, in which the tokens that are not
 * listed have the proportions of S, times the temperature. z: the student's logits, before the cap. */
__global__ static void __launch_bounds__(DIVERGENCE_THREADS)
    divergence_list_kernel(const TokenDivergence a, int first, const float *z_, float *u_) {
    const int V = a.head.vocab, K = a.listed, row = first + (int)blockIdx.x, thread = (int)threadIdx.x;
    const float *z = z_ + (size_t)blockIdx.x * a.head.padded_vocab, inverse = 1.0f / a.temperature;
    float *u = u_ + (size_t)blockIdx.x * a.padded_vocab;
    const int32_t *token = (const int32_t *)a.list + (size_t)row * K;
    const float *logp = (const float *)a.list_logp + (size_t)row * K;
    if (K < V) {
        for (int v = thread; v < V; v += DIVERGENCE_THREADS) u[v] = divergence_capped(z[v], a.head.cap);
        __syncthreads();
        for (int k = thread; k < K; k += DIVERGENCE_THREADS) u[token[k]] = -INFINITY;
        __syncthreads();
        const LogitSums rest = divergence_read(u, V, inverse, 0);
        const float shift = ((const float *)a.rest_logp)[row] - logf(rest.sum);
        for (int v = thread; v < V; v += DIVERGENCE_THREADS)
            u[v] = ((u[v] - rest.max) * inverse + shift) * a.temperature;
        __syncthreads();
    }
    for (int k = thread; k < K; k += DIVERGENCE_THREADS) u[token[k]] = logp[k] * a.temperature;
}

/* Processes rows first .. first+gridDim.x-1, whose logits are z and u, before the caps. dz[., v] = dloss/dz, before the
 * cap; padding gets 0. dz may be z. */
template <typename T>
__global__ static void __launch_bounds__(DIVERGENCE_THREADS)
    divergence_kernel(const TokenDivergence a, int first, const float *z_, const float *u_, T *dz_) {
    const Head &h = a.head;
    const int V = h.vocab, Vp = h.padded_vocab, row = first + (int)blockIdx.x, thread = (int)threadIdx.x;
    const float *z = z_ + (size_t)blockIdx.x * Vp, *u = u_ + (size_t)blockIdx.x * a.padded_vocab;
    const float own_inverse = 1.0f / h.temperature, inverse = 1.0f / a.temperature;
    const int target = ((const int32_t *)h.target)[row];
    const float chosen = z[target]; /* read before the barriers in logits_read(): dz may be z */
    const LogitSums sums = divergence_read(z, V, own_inverse, h.cap);
    const LogitSums scaled = own_inverse == inverse ? sums : divergence_read(z, V, inverse, h.cap);
    const LogitSums teacher = divergence_read(u, V, inverse, a.cap);
    const DivergenceSide own = divergence_side(sums, own_inverse, h.cap), S = divergence_side(scaled, inverse, h.cap),
                         U = divergence_side(teacher, inverse, a.cap);
    const float entropy = divergence_entropy(sums);
    float f = 0, q = 0, forward = 0, reverse = 0;
    for (int v = thread; v < V; v += DIVERGENCE_THREADS) {
        const float s = divergence_logp(S, z[v]), t = divergence_logp(U, u[v]);
        const DivergenceTerm term = divergence_term(a.kind, s, t, a.beta);
        f += term.f;
        q += term.q;
        if (a.forward_kl) forward += divergence_term(TOKEN_FORWARD_KL, s, t, 0).f;
        if (a.reverse_kl) reverse += divergence_term(TOKEN_REVERSE_KL, s, t, 0).f;
    }
    f = block_sum<DIVERGENCE_THREADS>(f);
    q = block_sum<DIVERGENCE_THREADS>(q);
    forward = block_sum<DIVERGENCE_THREADS>(forward);
    reverse = block_sum<DIVERGENCE_THREADS>(reverse);
    if (thread == 0) {
        ((float *)a.value)[row] = f;
        if (a.forward_kl) ((float *)a.forward_kl)[row] = forward;
        if (a.reverse_kl) ((float *)a.reverse_kl)[row] = reverse;
        if (a.logp) ((float *)a.logp)[row] = divergence_logp(U, u[target]);
        if (a.entropy) ((float *)a.entropy)[row] = divergence_entropy(teacher);
        if (a.argmax) ((int32_t *)a.argmax)[row] = teacher.argmax < V ? teacher.argmax : 0; /* all NaN: 0 */
        ((float *)h.logp)[row] = divergence_logp(own, chosen);
        if (h.entropy) ((float *)h.entropy)[row] = entropy;
        if (h.argmax) ((int32_t *)h.argmax)[row] = sums.argmax < V ? sums.argmax : 0;
    }
    if (!a.weight) return;
    T *dz = dz_ + (size_t)blockIdx.x * Vp;
    const float scale = ((const float *)a.weight)[row] * inverse;
    const float toward = h.dlogp ? ((const float *)h.dlogp)[row] * own_inverse : 0;
    const float spread = h.dentropy ? ((const float *)h.dentropy)[row] * own_inverse : 0;
    for (int v = thread; v < Vp; v += DIVERGENCE_THREADS) {
        float g = 0;
        if (v < V) {
            const float x = divergence_capped(z[v], h.cap), bent = h.cap > 0 ? x / h.cap : 0;
            const float s = x * inverse - S.base, logp = x * own_inverse - own.base, p = expf(logp);
            g = scale * (divergence_term(a.kind, s, divergence_logp(U, u[v]), a.beta).q - expf(s) * q);
            g += (v == target ? toward : 0) - toward * p - (p > 0 ? spread * p * (logp + entropy) : 0);
            g *= 1 - bent * bent;
        }
        dz[v] = from_float<T>(g);
    }
}

template <typename T> static inline void cuda_divergence(Device *d, const TokenDivergence *a) {
    const Head *head = &a->head;
    const int C = head->channels, Vp = head->padded_vocab, Vt = a->padded_vocab;
    if (head->rows == 0) return;
    const int chunk = cuda_head_chunk_rows(head->rows, Vp + Vt);
    const size_t count = (size_t)chunk * (size_t)Vp;
    float *z = cuda_scratch_of<float>(d, count, "a chunk of logits");
    float *u = cuda_scratch_of<float>(d, (size_t)chunk * (size_t)Vt, "a chunk of the teacher's logits");
    T *dz = NULL;
    if constexpr (sizeof(T) == sizeof(float)) dz = z;
    else if (a->weight) dz = cuda_scratch_of<T>(d, count, "the gradient of a chunk of logits");
    if (d->failed) return;
    for (int first = 0; first < head->rows; first += chunk) {
        const int n = head->rows - first < chunk ? head->rows - first : chunk;
        const T *h = (const T *)head->h + (size_t)first * C, *teacher = (const T *)a->h + (size_t)first * a->channels;
        cuda_matmul_nt<T, float>(d, z, h, (const T *)head->weight, aligned_rows(n), Vp, C, 1, 0);
        if (a->listed) {
            LAUNCH(divergence_list_kernel, (unsigned)n, DIVERGENCE_THREADS, 0, d->stream, *a, first, z, u);
            CUDA_LAUNCHED(d, "divergence_list_kernel", "R %d, V %d, listed %d", n, head->vocab, a->listed);
        } else cuda_matmul_nt<T, float>(d, u, teacher, (const T *)a->output, aligned_rows(n), Vt, a->channels, 1, 0);
        LAUNCH((divergence_kernel<T>), (unsigned)n, DIVERGENCE_THREADS, 0, d->stream, *a, first, z, u, dz);
        CUDA_LAUNCHED(d, "divergence_kernel", "R %d, C %d, V %d, Vp %d, teacher %d", n, C, head->vocab, Vp, Vt);
        if (!a->weight) continue;
        cuda_matmul_nn<T, T>(d, (T *)head->dh + (size_t)first * C, dz, (const T *)head->weight, aligned_rows(n), C, Vp,
                             1, 0);
        if (head->dweight) cuda_matmul_tn<T, float>(d, (float *)head->dweight, dz, h, n, Vp, C, 1, 1);
    }
}

#endif
