/* cpu.c - the CPU backend: fills in the table of backend.h.
 *
 *   gemm.h        the device, and matrix products: through oneDNN, or in bfloat16 our own
 *   norm.h        row-wise operations
 *   lora.h        low-rank adapters (lora_pairs.h: in bfloat16)
 *   dora.h        lengths of adapted rows
 *   quantized.h   products with quantised matrices
 *   rotary.h      rotary positions, and the norm of queries and keys
 *   attention.h   blocked attention over segments with shared prefixes
 *   head.h        log-probabilities, entropy, sampling (head_tiles.h: in bfloat16)
 *   divergence.h  the divergence of two models' distributions
 *   peak.h        the arithmetic peak that the trainers compare their speed with
 *
 * The file is one translation unit. The Makefile compiles it once per instruction set, with CPU_BACKEND as the name of
 * its one public function, and links all of them into every program; cpu.h chooses at run time.
 *
 * Weights, their gradients and the moments are float32. So are activations, except in the backends that are compiled with
 * CPU_HALF, for --dtype bf16: there they are bfloat16 (act.h). All threads that OpenMP provides are used; OMP_NUM_THREADS
 * sets their number.
 */
#include "../base/error.h"      /* Error, error_set, xcalloc */
#include "../model/backend.h"   /* Weights, Acts, Floats, DTYPE_BF16, ... */
#include "act.h"                /* Act, ACT_HALF, act_get, act_set */
#include "attention_backward.h" /* cpu_attention_backward */
#include "attention_forward.h"  /* cpu_attention_forward */
#include "cpu.h"                /* CPU_CODE_BYTES */
#include "head_tiles.h"         /* head_tiles_decoded, head_tiles_floats, head_tiles_halves, head_tiles_kept */
#include "tiles.h"              /* tiles_available, CPU_TILES, tiles_count */
#include "tiles_activation.h"   /* TilesActivation */
#include "tiles_product.h"      /* TilesProduct, TILES_ACTIVATION, TILES_GELU, tiles_sums_count */

#include "attention.h"  /* cpu_kv_store */
#include "divergence.h" /* cpu_divergence, divergence_chunk_rows, divergence_tiles_left, divergence_tiles_right */
#include "dora.h"       /* cpu_dora_backward, cpu_dora_forward, cpu_dora_norm */
#include "gemm.h"       /* Device, CPU_BLOCK, gemm_weights_changed, GEMM_WIDE_ROWS, ... */
#include "head.h"       /* head_chunk_rows, cpu_head, cpu_logits, cpu_quant_logits, ... */
#include "lora.h"       /* cpu_lora_backward, cpu_lora_forward, lora_scratch_most */
#include "norm.h"       /* COLUMN_BLOCK, cpu_gelu_forward, cpu_add, cpu_column_sums, ... */
#include "peak.h"       /* cpu_peak */
#include "quantized.h"  /* QUANT_BUFFER, cpu_quant_backward, cpu_quant_embed_forward, cpu_quant_forward */
#include "rotary.h"     /* cpu_rotary_backward, cpu_rotary_forward, cpu_rotary_table */
#include <unistd.h>

#ifndef CPU_BACKEND
#define CPU_BACKEND                                                                                                    \
    backend_cpu_here /* for a benchmark, which includes this file and is compiled for the machine that it runs on */
#endif

static inline bool cpu_open(Device **device, Dtype dtype, Error *e) {
    if (ACT_HALF && dtype != DTYPE_BF16) return error_set(e, "cpu: these kernels are for --dtype bf16");
    if (!ACT_HALF && dtype == DTYPE_BF16 && !tiles_available())
        return error_set(e, "cpu: these kernels are not for --dtype bf16");
    Device *d = (Device *)xcalloc(1, sizeof *d);
    d->dtype = dtype;
    d->plans = (GemmPlan *)xcalloc(GEMM_PLANS, sizeof *d->plans);
    if (dnnl_engine_create(&d->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&d->stream, d->engine, dnnl_stream_default_flags) != dnnl_success) {
        free(d->plans), free(d);
        return error_set(e, "cpu: oneDNN gives no engine");
    }
    *device = d;
    return true;
}

static inline void cpu_close(Device *d) {
    gemm_plans_clear(d);
    while (d->pack_count) gemm_weights_changed(d, d->packs[0].from, 1, true);
    dnnl_stream_destroy(d->stream), dnnl_engine_destroy(d->engine);
    free(d->plans), free(d->packs), free(d->pools), free(d->half[0]), free(d->half[1]), free(d->scratchpad);
    for (int i = 0; i < CPU_WIDE; i++) free(d->wide[i]);
    free(d->sums), free(d->logits), free(d->partial), free(d->low), free(d->panel), free(d->work), free(d);
}

static inline bool cpu_sync(Device *d, Error *e) { return d->failed ? error_set(e, "%s", d->error.text) : true; }

/* Returns memory aligned to CPU_ALIGN, with zeros or uninitialised. What free() takes is stored before it. */
static inline void *cpu_new(bool zeroed, size_t bytes, const char *what, Error *e) {
    enum { CPU_ALIGN = 64 };
    /* Linux would grant more memory than the machine has, and kill the process when it uses it */
    const size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    const size_t all = bytes + 2 * CPU_ALIGN;
    char *base = bytes > machine ? NULL : (char *)(zeroed ? calloc(all, 1) : malloc(all));
    if (!base) {
        error_set(e, "out of memory: %zu bytes for %s, the machine has %zu", bytes, what, machine);
        return NULL;
    }
    cpu_huge_pages(base, all);
    char *memory = base + 2 * CPU_ALIGN - (uintptr_t)base % CPU_ALIGN;
    memcpy(memory - sizeof base, &base, sizeof base);
    return memory;
}

static inline void *cpu_alloc(Device *d, size_t bytes, const char *what, Error *e) {
    (void)d;
    return cpu_new(false, bytes, what, e);
}

static inline void *cpu_alloc_zeroed(Device *d, size_t bytes, const char *what, Error *e) {
    (void)d;
    return cpu_new(true, bytes, what, e);
}

static inline void cpu_release(Device *d, void *memory) {
    (void)d;
    char *base = NULL;
    if (memory) memcpy(&base, (char *)memory - sizeof base, sizeof base);
    free(base);
}

static inline size_t cpu_scratch_bytes(Device *d) { return d->alive; }

static inline size_t cpu_most(size_t a, size_t b) { return a > b ? a : b; }

/* The logits of rows that are sampled are in the memory that the head has for logits, or in bfloat16 for statistics. */
static inline size_t cpu_scratch_predict(Device *d, const ScratchUse *u) {
    const bool taught = u->teacher_vocab > 0;
    const int rows = u->rows > 0 ? u->rows : 1, Vp = u->padded_vocab, Vt = u->teacher_vocab;
    const int chunk = divergence_chunk_rows(rows, Vp, Vt),
              width = (int)cpu_most((size_t)u->width, (size_t)u->teacher_width);
    const size_t both = taught ? (size_t)chunk * (size_t)(Vp + Vt) : 0;
    const size_t low = u->adapters ? lora_scratch_most(rows, u->adapters, u->widest) : 0;
    const size_t decoded =
        u->quantized_head && d->dtype == DTYPE_BF16 && tiles_available() ? head_tiles_decoded(u->width, Vp) : 0;
    const size_t panels = u->quantized ? cpu_most(decoded, (size_t)omp_get_max_threads() * QUANT_BUFFER) : 0;
    const size_t wide = ACT_HALF && panels ? (size_t)rows * 2 * (size_t)u->widest : 0;
    const size_t head_size = (size_t)(u->width < 256 ? u->width : 256); /* at most, in nearly all models */
    const size_t sums = ACT_HALF ? 2 * (size_t)rows * head_size * (size_t)omp_get_max_threads() : 0;
    const bool converts = ACT_HALF && !tiles_available();
    const int most = rows < GEMM_WIDE_ROWS ? rows : GEMM_WIDE_ROWS;
    const size_t converted = converts ? (size_t)gemm_rows(most) * ((size_t)u->width + (size_t)u->widest) : 0;
    const size_t drawn = cpu_most(both, u->sampled ? (size_t)head_chunk_rows(u->sampled, Vp) * (size_t)Vp : 0);
    if (d->dtype == DTYPE_BF16 && !converts) {
        const size_t head = head_tiles_halves(rows, u->width, Vp), operand = tiles_count(rows, u->widest);
        const size_t largest = tiles_count(u->width, u->widest), turned = largest < u->weights ? largest : u->weights;
        const size_t left = taught ? divergence_tiles_left(chunk, width, Vp) : 0;
        const size_t right = taught ? divergence_tiles_right(chunk, u->width, Vp) : 0;
        const size_t floats = cpu_most(head_tiles_floats(rows, u->width) + head_tiles_kept(rows, Vp), drawn) +
                              tiles_sums_count(omp_get_max_threads()) + low + panels + wide + sums;
        return 2 * CPU_CODE_BYTES + floats * sizeof(float) +
               ((gemm_passing(rows) && !u->sampled ? 0 : u->weights) + cpu_most(left, cpu_most(operand, head)) +
                cpu_most(right, cpu_most(operand, turned))) *
                   sizeof(uint16_t);
    }
    const size_t logits = (size_t)head_chunk_rows(rows, Vp) * (size_t)Vp;
    return (d->dtype == DTYPE_BF16 ? 2 : 1) * CPU_CODE_BYTES +
           (u->weights + cpu_most(logits, drawn) + low + panels + wide + sums + converted) * sizeof(float);
}

static inline void cpu_zero(Device *d, void *memory, size_t bytes) {
    (void)d;
    enum { PART = 1 << 20 };
#pragma omp parallel for schedule(static) if (bytes > PART)
    for (size_t at = 0; at < bytes; at += PART) memset((char *)memory + at, 0, bytes - at < PART ? bytes - at : PART);
}

static inline void cpu_copy(Device *d, void *to, const void *from, size_t bytes) {
    (void)d;
    memcpy(to, from, bytes);
}

static inline void cpu_weights_upload(Device *d, Weights *weights, const float *host, size_t n) {
#pragma omp parallel for schedule(static) if (cpu_worth(n))
    for (size_t at = 0; at < n; at += CPU_BLOCK)
        memcpy((float *)weights + at, host + at, (n - at < CPU_BLOCK ? n - at : CPU_BLOCK) * sizeof(float));
    gemm_weights_changed(d, (const float *)weights, n, false);
}

static inline void cpu_weights_release(Device *d, Weights *weights, size_t n) {
    gemm_weights_changed(d, (const float *)weights, n, true);
    cpu_release(d, weights);
}

static inline void cpu_weights_changed(Device *d, const Weights *weights, size_t n) {
    gemm_weights_changed(d, (const float *)weights, n, false);
}

static inline void cpu_weights_download(Device *d, float *host, const Weights *weights, size_t n) {
    (void)d;
    memcpy(host, weights, n * sizeof(float));
}

static inline void cpu_linear_forward(Device *d, Acts *out, const Acts *x, const Weights *w, const Weights *b, int N,
                                      int IC, int OC) {
    gemm_nt(d, (Act *)out, (const Act *)x, (const float *)w, (const float *)b, N, OC, IC);
}

static inline void cpu_linear_backward(Device *d, Acts *dx, Floats *dw, Floats *db, const Acts *dout, const Acts *x,
                                       const Weights *w, int N, int IC, int OC) {
    if (dx) gemm_nn(d, (Act *)dx, (const Act *)dout, (const float *)w, N, IC, OC);
#if defined CPU_HALF && defined CPU_TILES
    if (dw && db && tiles_amx()) /* one pass over dout serves both */
        return gemm_tn_sums_bf16(d, (float *)dw, (float *)db, dout, true, (const Act *)x, N, OC, IC);
#endif
    if (dw) gemm_tn(d, (float *)dw, (const Act *)dout, (const Act *)x, N, OC, IC);
    if (db) cpu_column_sums(d, (float *)db, (const Act *)dout, N, OC);
}

static inline void cpu_store_next(Device *d, const Floats *dw) { d->store_next = (const float *)dw; }

static inline void cpu_linear_gelu_forward(Device *d, Acts *pre, Acts *out, const Acts *x, const Weights *w,
                                           const Weights *b, int N, int IC, int OC) {
#if defined CPU_HALF && defined CPU_TILES
    const TilesActivation t = {.kind = MLP_GELU, .hidden = OC, .act = (Act *)out};
    const TilesProduct p = {.rows = N,
                            .cols = OC,
                            .depth = IC,
                            .epilogue = TILES_GELU,
                            .bias = (const float *)b,
                            .half = (Act *)pre,
                            .ldo = (size_t)OC,
                            .activation = &t};
    gemm_product_bf16(d, p, true, x, true, (const float *)w);
#else
    cpu_linear_forward(d, pre, x, w, b, N, IC, OC);
    cpu_gelu_forward(d, out, pre, (size_t)N * (size_t)OC);
#endif
}

#if defined CPU_HALF && defined CPU_TILES
static inline void cpu_mlp_backward(Device *d, const MlpBackward *a) {
    const TilesActivation t = {
        .kind = a->kind, .hidden = a->hidden, .pre = (const Act *)a->pre, .act = (Act *)a->act, .dpre = (Act *)a->dpre};
    const TilesProduct p = {
        .rows = a->rows, .cols = a->hidden, .depth = a->width, .epilogue = TILES_ACTIVATION, .activation = &t};
    gemm_product_bf16(d, p, false, a->dout, true, (const float *)a->w);
    cpu_linear_backward(d, NULL, a->dw, a->db, a->dout, a->act, a->w, a->rows, a->hidden, a->width);
}
#else
#define cpu_mlp_backward NULL
#endif

static inline void cpu_value_forward(Device *d, Floats *value, const Acts *h_, const Weights *w_, const Weights *b,
                                     int R, int C) {
    (void)d;
    const Act *h = (const Act *)h_;
    const float *w = (const float *)w_;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)R * (size_t)C))
    for (int r = 0; r < R; r++) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int c = 0; c < C; c++) sum += act_get(h[(size_t)r * (size_t)C + (size_t)c]) * w[c];
        ((float *)value)[r] = sum + *(const float *)b;
    }
}

static inline void cpu_value_backward(Device *d, Acts *dh_, Floats *dw_, Floats *db, const Floats *dvalue_,
                                      const Acts *h_, const Weights *w_, int R, int C) {
    (void)d;
    Act *dh = (Act *)dh_;
    const Act *h = (const Act *)h_;
    float *dw = (float *)dw_;
    const float *dvalue = (const float *)dvalue_, *w = (const float *)w_;
#pragma omp parallel for schedule(static) if (cpu_worth((size_t)R * (size_t)C))
    for (int block = 0; block < C; block += COLUMN_BLOCK)
        for (int r = 0; r < R; r++)
            for (int c = block; c < C && c < block + COLUMN_BLOCK; c++) {
                const size_t at = (size_t)r * (size_t)C + (size_t)c;
                dh[at] = act_set(act_get(dh[at]) + dvalue[r] * w[c]);
                dw[c] += dvalue[r] * act_get(h[at]);
            }
    for (int r = 0; r < R; r++) *(float *)db += dvalue[r];
}

/* Sums fixed parts of 64 Ki elements and adds them in order, so the result does not depend on the number of threads. */
static inline double cpu_square_sum(Device *d, const Floats *x_, size_t n) {
    enum { PART = 1 << 16 };
    const float *x = (const float *)x_;
    const size_t parts = (n + PART - 1) / PART;
    d->partial = (float *)cpu_scratch(d, d->partial, &d->partial_count, 2 * parts, sizeof(float));
    double *sums = (double *)d->partial, total = 0;
#pragma omp parallel for schedule(static) if (parts > 1)
    for (size_t part = 0; part < parts; part++) {
        const size_t first = part * PART, last = first + PART < n ? first + PART : n;
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t i = first; i < last; i++) sum += (double)x[i] * (double)x[i];
        sums[part] = sum;
    }
    for (size_t part = 0; part < parts; part++) total += sums[part];
    return total;
}

static inline void cpu_adamw(Device *d, const AdamW *a) {
    float *restrict p = (float *)a->weights, *restrict m = (float *)a->m, *restrict v = (float *)a->v;
    const float *restrict grad = (const float *)a->grad;
    const float b1 = a->beta1, b2 = a->beta2, eps = a->eps, scale = a->grad_scale;
    const float step_size = (float)((double)a->lr / (1.0 - pow((double)b1, (double)a->step)));
    const float correction = (float)(1.0 / sqrt(1.0 - pow((double)b2, (double)a->step)));
    const float keep = 1.0f - a->lr * a->weight_decay;
#pragma omp parallel for schedule(static) if (cpu_worth(a->n))
    for (size_t block = 0; block < a->n; block += CPU_BLOCK) {
        const size_t end = a->n - block < CPU_BLOCK ? a->n : block + CPU_BLOCK;
#pragma omp simd
        for (size_t i = block; i < end; i++) {
            const float g = grad[i] * scale;
            m[i] = b1 * m[i] + (1.0f - b1) * g;
            v[i] = b2 * v[i] + (1.0f - b2) * g * g;
            p[i] = p[i] * keep - step_size * m[i] / (sqrtf(v[i]) * correction + eps);
        }
    }
    gemm_weights_changed(d, p, a->n, false);
}

const Backend *CPU_BACKEND(void) {
    static const Backend table = {.name = "cpu",
                                  .weight_size = sizeof(float),
                                  .act_size = sizeof(Act),
                                  .recompute = ACT_HALF,
                                  .open = cpu_open,
                                  .close = cpu_close,
                                  .sync = cpu_sync,
                                  .alloc = cpu_alloc,
                                  .alloc_zeroed = cpu_alloc_zeroed,
                                  .release = cpu_release,
                                  .scratch_bytes = cpu_scratch_bytes,
                                  .scratch_predict = cpu_scratch_predict,
                                  .peak = cpu_peak,
                                  .zero = cpu_zero,
                                  .upload = cpu_copy,
                                  .download = cpu_copy,
                                  .weights_upload = cpu_weights_upload,
                                  .weights_download = cpu_weights_download,
                                  .weights_release = cpu_weights_release,
                                  .weights_changed = cpu_weights_changed,
                                  .embed_forward = cpu_embed_forward,
                                  .embed_backward = cpu_embed_backward,
                                  .noise_add = cpu_noise_add,
                                  .norm_forward = cpu_norm_forward,
                                  .norm_backward = cpu_norm_backward,
                                  .linear_forward = cpu_linear_forward,
                                  .linear_backward = cpu_linear_backward,
                                  .store_next = cpu_store_next,
                                  .linear_gelu_forward = cpu_linear_gelu_forward,
                                  .quant_forward = cpu_quant_forward,
                                  .quant_backward = cpu_quant_backward,
                                  .quant_embed_forward = cpu_quant_embed_forward,
                                  .quant_logits = cpu_quant_logits,
                                  .lora_forward = cpu_lora_forward,
                                  .lora_backward = cpu_lora_backward,
                                  .dora_norm = cpu_dora_norm,
                                  .dora_forward = cpu_dora_forward,
                                  .dora_backward = cpu_dora_backward,
                                  .mlp_backward = cpu_mlp_backward,
                                  .gelu_forward = cpu_gelu_forward,
                                  .gelu_backward = cpu_gelu_backward,
                                  .gate_forward = cpu_gate_forward,
                                  .gate_backward = cpu_gate_backward,
                                  .rotary_table = cpu_rotary_table,
                                  .rotary_forward = cpu_rotary_forward,
                                  .rotary_backward = cpu_rotary_backward,
                                  .attention_forward = cpu_attention_forward,
                                  .attention_backward = cpu_attention_backward,
                                  .kv_store = cpu_kv_store,
                                  .add = cpu_add,
                                  .gather_rows = cpu_gather_rows,
                                  .scatter_rows = cpu_scatter_rows,
                                  .head = cpu_head,
                                  .divergence = cpu_divergence,
                                  .logits = cpu_logits,
                                  .sample = cpu_sample,
                                  .value_forward = cpu_value_forward,
                                  .value_backward = cpu_value_backward,
                                  .square_sum = cpu_square_sum,
                                  .adamw = cpu_adamw};
    return &table;
}
