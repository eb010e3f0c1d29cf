/* head.h - the language-model head on the CPU: log-probabilities, entropy, their gradient, and sampling.
 *
 * Logits exist only for a chunk of rows at a time (at most HEAD_CHUNK floats), regardless of the batch size. A chunk
 * takes one matrix product, one pass per row that overwrites the logits with their gradient, and two more products.
 */
#ifndef LLMC_CPU_HEAD_H
#define LLMC_CPU_HEAD_H

#include "../base/random.h"   /* random_uniform */
#include "../model/backend.h" /* Acts, Draw, Floats, QuantMatrix, ... */
#include "act.h"              /* Act */
#include "gemm.h"             /* Device, cpu_scratch, gemm_nn_floats, gemm_nt_floats, ... */
#include "head_tiles.h"       /* HeadRow, head_tiles */
#include "quantized.h"        /* quant_backward_floats, quant_forward_floats */
#include "tiles.h"            /* CPU_TILES */
#include "vector_math.h"      /* cpu_exp, cpu_cap, cpu_max */

#define HEAD_CHUNK ((size_t)26 << 20)

/* Returns the number of rows of a chunk of logits: all if they fit, otherwise as many as fit, in whole blocks of the
 * products. */
static inline int head_chunk_rows(int rows, int padded_vocab) {
    const int fit = (int)(HEAD_CHUNK / (size_t)padded_vocab), block = fit >= 256 ? 256 : ROW_ALIGN;
    const int most = fit < ROW_ALIGN ? ROW_ALIGN : fit / block * block;
    return gemm_rows(rows < most ? rows : most);
}

static inline float *head_logits(Device *d, int rows, int padded_vocab) {
    d->logits =
        (float *)cpu_scratch(d, d->logits, &d->logits_count, (size_t)rows * (size_t)padded_vocab, sizeof(float));
    return d->logits;
}

/* logits[n,Vp] = h[n,C] weight^T, or with the matrix in blocks if there is one. */
static inline void head_product(Device *d, float *logits, const Act *h, const Weights *weight,
                                const QuantMatrix *matrix, int n, int Vp, int C) {
    if (matrix) quant_forward_floats(d, logits, (const Acts *)h, matrix, NULL, n, C, Vp);
    else gemm_nt_floats(d, logits, h, (const float *)weight, n, Vp, C);
}

/* dh[n,C] = dz[n,Vp] weight, likewise. */
static inline void head_product_backward(Device *d, const Head *a, Act *dh, const float *dz, int n) {
    if (a->matrix) quant_backward_floats(d, (Acts *)dh, dz, a->matrix, n, a->channels, a->padded_vocab);
    else gemm_nn_floats(d, dh, dz, (const float *)a->weight, n, a->channels, a->padded_vocab);
}

static inline HeadRow head_row(const float *restrict z, int V, float inverse_temperature) {
    const float max = cpu_max(32, z, V);
    HeadRow row = {.max = max, .argmax = -1};
    double sum = 0, weighted = 0;
    for (int start = 0; start < V; start += 4096) { /* sums in float over a block and in double over the row */
        const int end = V - start < 4096 ? V : start + 4096;
        float s = 0, t = 0;
#pragma omp simd reduction(+ : s, t)
        for (int v = start; v < end; v++) {
            const float y = (z[v] - max) * inverse_temperature, e = cpu_exp(y);
            s += e;
            t += e * (e > 0.0f ? y : 0.0f);
        }
        sum += s;
        weighted += t;
    }
    row.log_sum = (float)log(sum);
    row.mean = (float)(weighted / sum);
    return row;
}

static inline int head_argmax(const float *z, int V, float max) {
    for (int v = 0; v < V; v++)
        if (z[v] == max) return v;
    return 0; /* all are NaN */
}

/* Replaces z by dloss/dz (backend.h), including the factor 1 / temperature. With a cap, z are the capped logits and the
 * result is the gradient of the logits before it: d(cap tanh(z / cap))/dz = 1 - tanh^2. */
static inline void head_row_backward(float *restrict z, const HeadRow *row, int V, int Vp, int target,
                                     float inverse_temperature, float dlogp, float dentropy, float cap) {
    const float max = row->max, log_sum = row->log_sum, entropy = row->log_sum - row->mean;
    const float a = dlogp * inverse_temperature, b = dentropy * inverse_temperature;
    const float inverse_cap = cap > 0.0f ? 1.0f / cap : 0.0f;
    const float bent = z[target] * inverse_cap;
#pragma omp simd
    for (int v = 0; v < V; v++) {
        const float logp = (z[v] - max) * inverse_temperature - log_sum, p = cpu_exp(logp), tanh = z[v] * inverse_cap;
        z[v] = (-a * p - (p > 0.0f ? b * p * (logp + entropy) : 0.0f)) * (1.0f - tanh * tanh);
    }
    z[target] += a * (1.0f - bent * bent);
    for (int v = V; v < Vp; v++) z[v] = 0;
}

static inline void cpu_head(Device *d, const Head *a) {
    if (a->rows == 0) return;
#ifdef CPU_TILES
    if (d->dtype == DTYPE_BF16) {
        head_tiles(d, a);
        return;
    }
#endif
    const int C = a->channels, V = a->vocab, Vp = a->padded_vocab, chunk = head_chunk_rows(a->rows, Vp);
    const float inverse_temperature = 1.0f / a->temperature;
    const Act *h = (const Act *)a->h;
    const int32_t *target = (const int32_t *)a->target;
    const float *dlogp = (const float *)a->dlogp, *dentropy = (const float *)a->dentropy;
    float *logp = (float *)a->logp, *entropy = (float *)a->entropy, *logits = head_logits(d, chunk, Vp);
    int32_t *argmax = (int32_t *)a->argmax;
    for (int first = 0; first < a->rows; first += chunk) {
        const int n = a->rows - first < chunk ? a->rows - first : chunk;
        const Act *hc = h + (size_t)first * (size_t)C;
        head_product(d, logits, hc, a->weight, a->matrix, n, Vp, C);
        if (d->failed) return;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)n * (size_t)V))
        for (int i = 0; i < n; i++) {
            const int r = first + i;
            float *z = logits + (size_t)i * (size_t)Vp;
            if (a->cap > 0) cpu_cap(z, V, a->cap);
            HeadRow row = head_row(z, V, inverse_temperature);
            logp[r] = (z[target[r]] - row.max) * inverse_temperature - row.log_sum;
            if (entropy) entropy[r] = row.log_sum - row.mean;
            if (argmax) argmax[r] = head_argmax(z, V, row.max);
            if (dlogp)
                head_row_backward(z, &row, V, Vp, target[r], inverse_temperature, dlogp[r], dentropy ? dentropy[r] : 0,
                                  a->cap);
        }
        if (!dlogp) continue;
        head_product_backward(d, a, (Act *)a->dh + (size_t)first * (size_t)C, logits, n);
        if (a->dweight) gemm_tn_floats(d, (float *)a->dweight, logits, hc, n, Vp, C);
    }
}

static inline void head_all_logits(Device *d, Floats *out, const Acts *h, const Weights *weight,
                                   const QuantMatrix *matrix, float cap, int R, int C, int V, int Vp) {
    const int chunk = head_chunk_rows(R, Vp);
    float *logits = head_logits(d, chunk, Vp);
    for (int first = 0; first < R; first += chunk) {
        const int n = R - first < chunk ? R - first : chunk;
        head_product(d, logits, (const Act *)h + (size_t)first * (size_t)C, weight, matrix, n, Vp, C);
        for (int i = 0; i < n; i++) {
            float *z = (float *)out + (size_t)(first + i) * (size_t)V;
            memcpy(z, logits + (size_t)i * (size_t)Vp, (size_t)V * sizeof(float));
            if (cap > 0) cpu_cap(z, V, cap);
        }
    }
}

static inline void cpu_logits(Device *d, Floats *out, const Acts *h, const Weights *weight, float cap, int R, int C,
                              int V, int Vp) {
    head_all_logits(d, out, h, weight, NULL, cap, R, C, V, Vp);
}

static inline void cpu_quant_logits(Device *d, Floats *out, const Acts *h, const QuantMatrix *matrix, float cap, int R,
                                    int C, int V, int Vp) {
    head_all_logits(d, out, h, NULL, matrix, cap, R, C, V, Vp);
}

/* The k-th largest of n values, 1 <= k <= n; reorders them (Hoare 1961, "Find"). */
static inline float sample_kth_largest(float *z, int n, int k) {
    int low = 0, high = n - 1;
    const int want = k - 1;
    while (low < high) {
        const float pivot = z[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (z[i] > pivot) i++;
            while (z[j] < pivot) j--;
            if (i > j) break;
            const float held = z[i];
            z[i++] = z[j];
            z[j--] = held;
        }
        if (want <= j) high = j;
        else if (want >= i) low = i;
        else break;
    }
    return z[want];
}

static inline int sample_descending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

enum { SAMPLE_BLOCK = 1024 };

/* Sum of exp(z - max) over z >= cut. block: (ceil(V / SAMPLE_BLOCK)) receives the sums of the blocks, or NULL. */
static inline double sample_mass(const float *z, int V, float max, float cut, float *block) {
    double total = 0;
    for (int start = 0; start < V; start += SAMPLE_BLOCK) {
        const int end = V - start < SAMPLE_BLOCK ? V : start + SAMPLE_BLOCK;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int v = start; v < end; v++) sum += z[v] >= cut ? cpu_exp(z[v] - max) : 0.0f;
        if (block) block[start / SAMPLE_BLOCK] = sum;
        total += (double)sum;
    }
    return total;
}

/* The smallest logit that top-k, top-p and min-p keep; ties with it are kept. z: scaled logits; copy: scratch (V). */
static inline float sample_cut(const Draw *a, const float *z, float max, float *copy) {
    const int V = a->vocab;
    float cut = -INFINITY;
    if (a->top_k > 0 && a->top_k < V) {
        memcpy(copy, z, (size_t)V * sizeof *z);
        cut = sample_kth_largest(copy, V, a->top_k);
    }
    if (a->top_p < 1) {
        /* Tokens with probability below (1 - top_p) / V have less than 1 - top_p in total, so none of them is kept and
         * only the others are sorted. */
        const double sum = sample_mass(z, V, max, cut, NULL);
        const float negligible = max + logf(0.5f * (1.0f - a->top_p) * (float)(sum / V));
        int n = 0;
        for (int v = 0; v < V; v++)
            if (z[v] >= cut && z[v] >= negligible) copy[n++] = z[v];
        qsort(copy, (size_t)n, sizeof *copy, sample_descending);
        double running = 0;
        int count = 0;
        while (count < n && running < (double)a->top_p * sum) running += (double)cpu_exp(copy[count++] - max);
        cut = copy[count ? count - 1 : 0];
    }
    if (a->min_p > 0) cut = fmaxf(cut, max + logf(a->min_p));
    return cut;
}

/* Inverts the cumulative distribution over the kept tokens, in the order of their ids, at the uniform number u: first
 * by whole blocks, then token by token. block: scratch (ceil(V / SAMPLE_BLOCK)). */
static inline int32_t sample_invert(const float *z, int V, float max, float cut, float u, float *block,
                                    float *kept_logp) {
    const double sum = sample_mass(z, V, max, cut, block), wanted = (double)u * sum;
    double running = 0;
    int start = 0;
    for (; start + SAMPLE_BLOCK < V && running + (double)block[start / SAMPLE_BLOCK] <= wanted; start += SAMPLE_BLOCK)
        running += (double)block[start / SAMPLE_BLOCK];
    int32_t chosen = -1;
    for (int v = start; v < V; v++) {
        if (!(z[v] >= cut)) continue;
        chosen = v;
        running += (double)cpu_exp(z[v] - max);
        if (running > wanted) break;
    }
    /* if rounding leaves `running` short of the sum: the last kept token */
    for (int v = start - 1; v >= 0 && chosen < 0; v--)
        if (z[v] >= cut) chosen = v;
    chosen = chosen < 0 ? 0 : chosen;
    *kept_logp = z[chosen] - max - (float)log(sum);
    return chosen;
}

/* Draws the token of one row. z: raw logits, which a cap changes; work: scratch (2V). */
static inline void sample_row(const Draw *a, int r, float *z, float *work) {
    const int V = a->vocab;
    if (a->cap > 0) cpu_cap(z, V, a->cap);
    const bool greedy = a->temperature == 0;
    const float inverse_temperature = greedy ? 1.0f : 1.0f / a->temperature;
    const HeadRow full = head_row(z, V, inverse_temperature);
    float *y = work, kept_logp = 0;
    for (int v = 0; v < V; v++) y[v] = z[v] * inverse_temperature;
    if (a->history && a->repetition_penalty != 1.0f) {
        const int32_t *seen = (const int32_t *)a->history + (size_t)r * (size_t)a->history_stride;
        for (int k = 0; k < ((const int32_t *)a->history_len)[r]; k++) {
            const float raw = z[seen[k]] * inverse_temperature; /* from z, not y: a repeated token counts once */
            y[seen[k]] = raw > 0 ? raw / a->repetition_penalty : raw * a->repetition_penalty;
        }
    }
    const float max = cpu_max(32, y, V);
    int32_t token;
    if (greedy) token = head_argmax(y, V, max);
    else {
        const uint32_t *stream = (const uint32_t *)a->stream + 2 * (size_t)r;
        const float u =
            random_uniform(a->seed, (uint64_t)stream[1] << 32 | stream[0], (uint64_t)((const int32_t *)a->index)[r]);
        token = sample_invert(y, V, max, sample_cut(a, y, max, work + V), u, work + V, &kept_logp);
    }
    ((int32_t *)a->token)[r] = token;
    ((float *)a->logp)[r] = (z[token] - full.max) * inverse_temperature - full.log_sum;
    if (a->kept_logp) ((float *)a->kept_logp)[r] = kept_logp;
}

static inline void cpu_sample(Device *d, const Draw *a) {
    if (a->rows == 0) return;
    const int C = a->channels, V = a->vocab, Vp = a->padded_vocab, chunk = head_chunk_rows(a->rows, Vp);
    float *logits = head_logits(d, chunk, Vp);
    const size_t threads = (size_t)omp_get_max_threads();
    d->work = (float *)cpu_scratch(d, d->work, &d->work_count, threads * 2 * (size_t)V, sizeof(float));
    for (int first = 0; first < a->rows; first += chunk) {
        const int n = a->rows - first < chunk ? a->rows - first : chunk;
        head_product(d, logits, (const Act *)a->h + (size_t)first * (size_t)C, a->weight, a->matrix, n, Vp, C);
        if (d->failed) return;
#pragma omp parallel for schedule(dynamic) if (cpu_worth((size_t)n * (size_t)V))
        for (int i = 0; i < n; i++)
            sample_row(a, first + i, logits + (size_t)i * (size_t)Vp,
                       d->work + (size_t)omp_get_thread_num() * 2 * (size_t)V);
    }
}

#endif
