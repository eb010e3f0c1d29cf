/* divergence.h - the divergence of two models' distributions on the CPU, with its gradient.
 *
 * The logits of both models exist only for a chunk of rows at a time, in the memory that the head has for those of one
 * (head.h). A row takes one pass over each model's logits for its normaliser, one for the divergence, and one that
 * overwrites the student's logits with their gradient.
 *
 * A teacher that is a list (backend.h) becomes such a row of logits first: one more pass.
 *
 * All kinds have one form: D = sum_v f_v, and with q_v = S_v dD/dS_v up to a multiple of S_v, which the softmax cancels,
 *   dD/dz_v = (q_v - S_v sum_w q_w) / temperature
 */
#ifndef LLMC_CPU_DIVERGENCE_H
#define LLMC_CPU_DIVERGENCE_H

#include "../model/backend.h" /* TokenDivergenceKind, TOKEN_FORWARD_KL, TOKEN_REVERSE_KL, TOKEN_JSD, ... */
#include "act.h"              /* Act */
#include "gemm.h"             /* Device, gemm_tn_floats */
#include "head.h"             /* head_row, head_argmax, head_product, head_chunk_rows, ... */
#include "head_tiles.h"       /* HeadRow */
#include "tiles.h"            /* tiles_count */
#include "vector_math.h"      /* cpu_exp, cpu_cap, cpu_log */

/* f and q of one token. */
typedef struct DivergenceTerm {
    float f, q;
} DivergenceTerm;

/* log(M / S) for M = b T + (1 - b) S and apart = log(T / S), without a power that overflows. */
static inline float divergence_mixture(float apart, float b) {
    const float small = cpu_exp(apart > 0.0f ? -apart : apart);
    return apart > 0.0f ? apart + cpu_log(b + (1.0f - b) * small) : cpu_log(b * small + (1.0f - b));
}

/* s, t: log S and log T of a token. A probability of 0 contributes nothing, and NaN makes the sums NaN. */
static inline __attribute__((always_inline)) DivergenceTerm divergence_term(TokenDivergenceKind kind, float s, float t,
                                                                            float b) {
    const float S = cpu_exp(s), T = cpu_exp(t);
    DivergenceTerm r = {S, S};
    if (kind == TOKEN_FORWARD_KL) {
        r.f = T > 0.0f ? T * (t - s) : T;
        r.q = -T;
    } else if (kind == TOKEN_REVERSE_KL) {
        r.f = S > 0.0f ? S * (s - t) : S;
        r.q = r.f;
    } else if (kind == TOKEN_JSD) {
        const float mixture = divergence_mixture(t - s, b), own = S > 0.0f ? -(1.0f - b) * S * mixture : S;
        r.f = own + (T > 0.0f ? b * T * (t - s - mixture) : T);
        r.q = own;
    } else if (kind == TOKEN_TVD) {
        r.f = 0.5f * (S > T ? S - T : T - S);
        r.q = 0.5f * (S > T ? S : S < T ? -S : S - T);
    } else if (kind == TOKEN_SKEW_FORWARD) {
        const float fall = t - s - divergence_mixture(t - s, b); /* log(T / M) */
        r.f = T > 0.0f ? T * fall : T;
        r.q = -(1.0f - b) * S * cpu_exp(fall);
    } else {
        const float fall = -divergence_mixture(t - s, 1.0f - b); /* log(S / M) */
        r.f = S > 0.0f ? S * fall : S;
        r.q = r.f - b * S * cpu_exp(fall);
    }
    return r;
}

/* One row: log-probabilities are z[v] * inverse_temperature - s, and u[v] * inverse_temperature - t. */
typedef struct DivergenceRow {
    const float *z, *u;
    int V;
    float inverse_temperature, s, t, beta;
} DivergenceRow;

enum { DIVERGENCE_BLOCK = 4096 }; /* sums are in float over a block and in double over the row */

/* Sets *f and *q to the row's sums. */
static inline __attribute__((always_inline)) void divergence_sums_of(TokenDivergenceKind kind, const DivergenceRow *r,
                                                                     double *f, double *q) {
    const float *restrict z = r->z, *restrict u = r->u;
    const float inverse = r->inverse_temperature, s = r->s, t = r->t, b = r->beta;
    *f = *q = 0;
    for (int start = 0; start < r->V; start += DIVERGENCE_BLOCK) {
        const int end = r->V - start < DIVERGENCE_BLOCK ? r->V : start + DIVERGENCE_BLOCK;
        float x = 0, y = 0;
#pragma omp simd reduction(+ : x, y)
        for (int v = start; v < end; v++) {
            const DivergenceTerm term = divergence_term(kind, z[v] * inverse - s, u[v] * inverse - t, b);
            x += term.f;
            y += term.q;
        }
        *f += (double)x;
        *q += (double)y;
    }
}

/* u[v] = scale (q_v - S_v sum); overwrites r->u. */
static inline __attribute__((always_inline)) void divergence_slopes_of(TokenDivergenceKind kind, const DivergenceRow *r,
                                                                       float sum, float scale, float *restrict u) {
    const float *restrict z = r->z;
    const float inverse = r->inverse_temperature, s = r->s, t = r->t, b = r->beta;
#pragma omp simd
    for (int v = 0; v < r->V; v++) {
        const float log_s = z[v] * inverse - s;
        u[v] = scale * (divergence_term(kind, log_s, u[v] * inverse - t, b).q - cpu_exp(log_s) * sum);
    }
}

/* The kind is a constant in each of these calls, so that the compiler makes a loop without branches for each. */
#define DIVERGENCE_DISPATCH(kind, function, ...)                                                                       \
    switch (kind) {                                                                                                    \
    case TOKEN_FORWARD_KL: function(TOKEN_FORWARD_KL, __VA_ARGS__); break;                                             \
    case TOKEN_REVERSE_KL: function(TOKEN_REVERSE_KL, __VA_ARGS__); break;                                             \
    case TOKEN_JSD: function(TOKEN_JSD, __VA_ARGS__); break;                                                           \
    case TOKEN_TVD: function(TOKEN_TVD, __VA_ARGS__); break;                                                           \
    case TOKEN_SKEW_FORWARD: function(TOKEN_SKEW_FORWARD, __VA_ARGS__); break;                                         \
    default: function(TOKEN_SKEW_REVERSE, __VA_ARGS__); break;                                                         \
    }

static inline void divergence_sums(TokenDivergenceKind kind, const DivergenceRow *r, double *f, double *q) {
    DIVERGENCE_DISPATCH(kind, divergence_sums_of, r, f, q)
}

static inline void divergence_slopes(TokenDivergenceKind kind, const DivergenceRow *r, float sum, float scale,
                                     float *u) {
    DIVERGENCE_DISPATCH(kind, divergence_slopes_of, r, sum, scale, u)
}

/* Writes the teacher's logits of row i from its list: log T, in which the tokens that are not listed have the proportions of
 * S, times the temperature. z: (V) the student's logits, after the cap. */
static inline void divergence_from_list(const TokenDivergence *a, int i, const float *restrict z, float *restrict u) {
    const int V = a->head.vocab, K = a->listed;
    const int32_t *token = (const int32_t *)a->list + (size_t)i * (size_t)K;
    const float *logp = (const float *)a->list_logp + (size_t)i * (size_t)K, inverse = 1.0f / a->temperature;
    memcpy(u, z, (size_t)V * sizeof *u);
    for (int k = 0; k < K; k++) u[token[k]] = -INFINITY;
    if (K < V) {
        const HeadRow rest = head_row(u, V, inverse);
        const float shift = ((const float *)a->rest_logp)[i] - rest.log_sum;
#pragma omp simd
        for (int v = 0; v < V; v++) u[v] = ((z[v] - rest.max) * inverse + shift) * a->temperature;
    }
    for (int k = 0; k < K; k++) u[token[k]] = logp[k] * a->temperature;
}

/* The values of row i, and with a weight its gradient: z, the student's logits after the cap, become the gradient of those
 * before it, and u, the teacher's, are overwritten. */
static inline void divergence_row(const TokenDivergence *a, int i, float *restrict z, float *restrict u) {
    const Head *h = &a->head;
    const int V = h->vocab, target = ((const int32_t *)h->target)[i];
    const float own_inverse = 1.0f / h->temperature, inverse = 1.0f / a->temperature;
    const HeadRow own = head_row(z, V, own_inverse), teacher = head_row(u, V, inverse);
    const HeadRow student = own_inverse == inverse ? own : head_row(z, V, inverse);
    const DivergenceRow row = {.z = z,
                               .u = u,
                               .V = V,
                               .inverse_temperature = inverse,
                               .s = student.max * inverse + student.log_sum,
                               .t = teacher.max * inverse + teacher.log_sum,
                               .beta = a->beta};
    double value, sum, other;
    divergence_sums(a->kind, &row, &value, &sum);
    ((float *)a->value)[i] = (float)value;
    for (int k = 0; k < 2; k++) {
        const TokenDivergenceKind kind = k ? TOKEN_REVERSE_KL : TOKEN_FORWARD_KL;
        float *out = (float *)(k ? a->reverse_kl : a->forward_kl);
        double kl = value;
        if (out && kind != a->kind) divergence_sums(kind, &row, &kl, &other);
        if (out) out[i] = (float)kl;
    }
    if (a->logp) ((float *)a->logp)[i] = (u[target] - teacher.max) * inverse - teacher.log_sum;
    if (a->entropy) ((float *)a->entropy)[i] = teacher.log_sum - teacher.mean;
    if (a->argmax) ((int32_t *)a->argmax)[i] = head_argmax(u, V, teacher.max);
    ((float *)h->logp)[i] = (z[target] - own.max) * own_inverse - own.log_sum;
    if (h->entropy) ((float *)h->entropy)[i] = own.log_sum - own.mean;
    if (h->argmax) ((int32_t *)h->argmax)[i] = head_argmax(z, V, own.max);
    if (!a->weight) return;
    divergence_slopes(a->kind, &row, (float)sum, ((const float *)a->weight)[i] * inverse, u);
    const float inverse_cap = h->cap > 0.0f ? 1.0f / h->cap : 0.0f;
#pragma omp simd
    for (int v = 0; v < V; v++) {
        const float bent = z[v] * inverse_cap;
        u[v] *= 1.0f - bent * bent;
    }
    if (h->dlogp || h->dentropy)
        head_row_backward(z, &own, V, h->padded_vocab, target, own_inverse, h->dlogp ? ((const float *)h->dlogp)[i] : 0,
                          h->dentropy ? ((const float *)h->dentropy)[i] : 0, h->cap);
    else memset(z, 0, (size_t)h->padded_vocab * sizeof *z);
    for (int v = 0; v < V; v++) z[v] += u[v];
}

/* Rows of a chunk: the logits of both models are in the memory of one. */
static inline int divergence_chunk_rows(int rows, int padded_vocab, int teacher_vocab) {
    return head_chunk_rows(rows, padded_vocab + teacher_vocab);
}

/* Sizes of the scratch memory on tiles: elements of bfloat16 in each of the two buffers of operands. */
static inline size_t divergence_tiles_left(int rows, int channels, int padded_vocab) {
    const size_t wide = tiles_count(rows, padded_vocab), high = tiles_count(padded_vocab, rows),
                 narrow = tiles_count(rows, channels);
    const size_t most = wide > high ? wide : high;
    return most > narrow ? most : narrow;
}
static inline size_t divergence_tiles_right(int rows, int channels, int padded_vocab) {
    const size_t turned = tiles_count(channels, padded_vocab), right = tiles_count(channels, rows);
    return turned > right ? turned : right;
}

static inline void cpu_divergence(Device *d, const TokenDivergence *a) {
    const Head *head = &a->head;
    if (head->rows == 0) return;
    const int C = head->channels, V = head->vocab, Vp = head->padded_vocab, Vt = a->padded_vocab;
    const int chunk = divergence_chunk_rows(head->rows, Vp, Vt);
    float *logits = head_logits(d, chunk, Vp + Vt), *other = logits + (size_t)chunk * (size_t)Vp;
    const Act *h = (const Act *)head->h, *teacher = (const Act *)a->h;
    for (int first = 0; first < head->rows; first += chunk) {
        const int n = head->rows - first < chunk ? head->rows - first : chunk;
        const Act *hc = h + (size_t)first * (size_t)C;
        head_product(d, logits, hc, head->weight, head->matrix, n, Vp, C);
        if (!a->listed)
            head_product(d, other, teacher + (size_t)first * (size_t)a->channels, a->output, a->matrix, n, Vt,
                         a->channels);
        if (d->failed) return;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)n * (size_t)V))
        for (int i = 0; i < n; i++) {
            float *z = logits + (size_t)i * (size_t)Vp, *u = other + (size_t)i * (size_t)Vt;
            if (head->cap > 0) cpu_cap(z, V, head->cap);
            if (a->listed) divergence_from_list(a, first + i, z, u);
            else if (a->cap > 0) cpu_cap(u, V, a->cap);
            divergence_row(a, first + i, z, u);
        }
        if (!a->weight) continue;
        head_product_backward(d, head, (Act *)head->dh + (size_t)first * (size_t)C, logits, n);
        if (head->dweight) gemm_tn_floats(d, (float *)head->dweight, logits, hc, n, Vp, C);
    }
}

#endif
