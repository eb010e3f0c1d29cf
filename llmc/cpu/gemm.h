/* gemm.h - matrix products on the processor, in float32, or of bfloat16 operands with float32 sums.
 *
 *   gemm_nt   out[N,M]  = x[N,K] w[M,K]^T + b[M]     a linear layer forward
 *   gemm_nn   out[N,M]  = x[N,K] w[K,M]              its gradient with respect to the input
 *   gemm_tn   out[M,K] += y[N,M]^T x[N,K]            its gradient with respect to the weights (store_next: = instead)
 *
 * Products in float32 are oneDNN's (its C API), except those by weights of up to GEMM_KEPT_ROWS rows, as in decode, which
 * are our own (panels.h). So are those in bfloat16 (tiles_product.h). On processors without bfloat16 arithmetic,
 * activations in bfloat16 are converted, and products are those in float32.
 *
 * For few rows, weights are packed once per update, into the layout of panels.h or that of tiles.h, and kept. `packs` finds
 * them by address, and gemm_weights_changed() marks them stale. Of products of more rows, oneDNN's read the same copy on
 * AVX-512, and on AVX2 the weights as they are. Those in bfloat16 read a copy that is kept for decode; if there is none, they
 * pack the weights into scratch memory. In bfloat16 the packing rounds the float32 weights, and activations are rounded before
 * each product, or stored in bfloat16 (act.h). Sums stay float32.
 *
 * Measured (dev/bench/bench_gemm.c) on a Zen 4, when a unit of work was half a panel: products of 32 rows reach 92 to 94 % of
 * the FMA peak on AVX-512 and 85 to 87 % on AVX2, where oneDNN's reach 84 and 39 to 80 %. On a Xeon with less bandwidth they
 * reach 64 %, and with half panels 45 %. In the two gradients sgemm is as good as packed weights and needs no memory.
 *
 * In bfloat16 one packed copy of the weights serves decode, forward and backward pass, and an element's sum depends only on
 * its own operands: a row gives the same bits in any batch, of the sampler or of the trainer, with any number of threads.
 *
 * A plan is a compiled primitive for one shape. Packed batches of every length share few plans: rows of a result are
 * computed in blocks and rounded up to ROW_ALIGN (backend.h allows the excess rows to be read and written). The primitives
 * share one scratch buffer owned by the device, so that it is counted.
 */
#ifndef LLMC_CPU_GEMM_H
#define LLMC_CPU_GEMM_H

#include "../base/error.h"    /* checked, xrealloc, Error, error_set */
#include "../model/backend.h" /* Acts, DTYPE_BF16, ROW_ALIGN, Dtype */
#include "act.h"              /* Act, ACT_HALF, act_get, act_set */
#include "panels.h"           /* PanelsProduct, panels_product_team */
#include "tiles.h"            /* CPU_TILES, tiles_pack_team, tiles_count, TILES_PAIRS, ... */
#include "tiles_product.h"    /* TilesProduct, tiles_product_team, TILES_ADD, TILES_STORE, ... */
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <sys/mman.h>
#include <unistd.h>

/* A product by weights [M, K] as oneDNN computes it. */
typedef struct GemmPlan {
    int N, M, K;
    bool bias, used;
    bool packed; /* weights are in blocks of the layout `weights`, otherwise as they are */
    dnnl_primitive_t primitive;
    dnnl_memory_t x, w, b, out, scratchpad; /* handles are set at each call */
    dnnl_memory_desc_t weights;
    size_t scratchpad_bytes;
} GemmPlan;

/* Memory of several packs, in huge pages. */
typedef struct GemmPool {
    char *memory;
    size_t bytes, used;
    int packs; /* that are in it */
} GemmPool;

typedef struct GemmPack {
    const float *from;
    size_t count;              /* floats at `from` */
    dnnl_memory_desc_t layout; /* in float32 */
    int depth;                 /* in bfloat16: K of the weights [M, K] */
    void *weights;             /* packed */
    size_t bytes;              /* of them */
    bool fresh;
} GemmPack;

enum {
    GEMM_PLANS = 2048,
    GEMM_KEPT_ROWS = 128, /* products of more rows are oneDNN's, or in bfloat16 do not keep packed weights */
    GEMM_WIDE = 2,        /* the first of those buffers that products use */
    CPU_WIDE = 4,         /* buffers of floats for operations that compute with those */
    GEMM_WIDE_ROWS = 512,
    CPU_HUGE_PAGE = 2 << 20,
    GEMM_POOL = 32 << 20 /* bytes of a pool, if its first pack does not need more */
};

struct Device {
    Dtype dtype;
    Error error; /* the first failure; sticky */
    bool failed;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    GemmPlan *plans; /* open-addressed by shape */
    int plan_count;
    GemmPack *packs;
    int pack_count;
    GemmPool *pools;
    int pool_count;
    uint8_t *scratchpad; /* scratch memory of oneDNN's primitives */
    size_t scratchpad_count;
    uint16_t *half[2]; /* operands rounded to bfloat16 */
    size_t half_count[2];
    const float *store_next; /* the gradient that the next product stores instead of adding to it, or NULL */
    float *sums;             /* partial sums of products in bfloat16 */
    size_t sums_count;
    float *logits; /* the head's chunk of logits */
    size_t logits_count;
    float *partial; /* sums of parts, added in a fixed order */
    size_t partial_count;
    float *panel; /* decoded blocks of quantised matrices */
    size_t panel_count;
    float *low; /* low-rank adapters: inner activations, their gradients, transposed matrices and blocks of threads */
    size_t low_count;
    float *work; /* sampling: two rows of the vocabulary per thread */
    size_t work_count;
    float *wide[CPU_WIDE]; /* activations in bfloat16, as floats */
    size_t wide_count[CPU_WIDE];
    size_t alive; /* bytes of packs and scratch */
};

static inline void cpu_fail(Device *d, const char *what, int status) {
    if (!d->failed) error_set(&d->error, "cpu: oneDNN %s failed with status %d", what, status);
    d->failed = true;
}

#define DNNL_TRY(d, call)                                                                                              \
    do {                                                                                                               \
        const dnnl_status_t status_ = (call);                                                                          \
        if (status_ != dnnl_success) {                                                                                 \
            cpu_fail(d, #call, (int)status_);                                                                          \
            return;                                                                                                    \
        }                                                                                                              \
    } while (0)

/* Asks for huge pages for memory that will be used as a whole: filling it causes fewer page faults, and reading it fewer TLB
 * misses. Linux uses huge pages unasked only if /sys/kernel/mm/transparent_hugepage/enabled is `always`. */
static inline void cpu_huge_pages(void *memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t first = ((uintptr_t)memory + CPU_HUGE_PAGE - 1) / CPU_HUGE_PAGE * CPU_HUGE_PAGE,
                    last = ((uintptr_t)memory + bytes) / CPU_HUGE_PAGE * CPU_HUGE_PAGE;
    if (first < last) madvise((void *)first, last - first, MADV_HUGEPAGE); /* a failure changes only the speed */
#else
    (void)memory, (void)bytes;
#endif
}

/* Grows a scratch buffer of the device; its contents are lost. Sizes do not change after the first step. */
static inline void *cpu_scratch(Device *d, void *buffer, size_t *count, size_t wanted, size_t size) {
    if (wanted <= *count) return buffer;
    free(buffer);
    d->alive += (wanted - *count) * size;
    *count = wanted;
    void *memory = checked(aligned_alloc(64, (wanted * size + 63) / 64 * 64), wanted * size);
    cpu_huge_pages(memory, wanted * size);
    return memory;
}

/* Returns whether the product that is to be added to `out` is stored instead (see store_next in backend.h), for this one
 * time. */
static inline bool gemm_stores(Device *d, const float *out) {
    const bool stores = out && d->store_next == out;
    if (stores) d->store_next = NULL;
    return stores;
}

/* Returns whether a pass over this many elements is worth waking the other threads. Waking them takes a few
 * microseconds, or a time slice on a machine whose cores are busy. */
static inline bool cpu_worth(size_t elements) { return elements > 16384; }

/* The same for a product of matrices in bfloat16, by the number of its terms. */
static inline bool cpu_worth_product(int n, int m, int k) { return (double)n * m * k > 1e6; }

/* Elementwise passes use blocks of this size. A thread's part then begins at a vector boundary, and the number of
 * threads has no influence on which elements are left to scalar code, whose sums may be contracted differently. */
enum { CPU_BLOCK = 4096 };

/* Returns n activations as floats: x itself, or memory of the device, of which there are CPU_WIDE (operations other than
 * products use the first GEMM_WIDE); read: with the values of x. cpu_narrow() takes results back to x. */
static inline float *cpu_wide(Device *d, int which, const Acts *x, size_t n, bool read) {
#ifdef CPU_HALF
    d->wide[which] = (float *)cpu_scratch(d, d->wide[which], &d->wide_count[which], n, sizeof(float));
    float *restrict wide = d->wide[which];
    const Act *restrict from = (const Act *)x;
#pragma omp parallel for simd schedule(static) if (parallel : cpu_worth(n))
    for (size_t i = 0; i < (read ? n : 0); i++) wide[i] = act_get(from[i]);
    return wide;
#else
    (void)d, (void)which, (void)n, (void)read;
    return (float *)(uintptr_t)x;
#endif
}

static inline void cpu_narrow(Acts *x, const float *wide, size_t n) {
#ifdef CPU_HALF
    Act *restrict to = (Act *)x;
#pragma omp parallel for simd schedule(static) if (parallel : cpu_worth(n))
    for (size_t i = 0; i < n; i++) to[i] = act_set(wide[i]);
#else
    (void)x, (void)wide, (void)n;
#endif
}

static inline void gemm_plan_make(Device *d, GemmPlan *p) {
    dnnl_dims_t xs = {p->N, p->K}, ws = {p->K, p->M}, os = {p->N, p->M}, bs = {1, p->M};
    dnnl_memory_desc_t x, w, b, out;
    DNNL_TRY(d, dnnl_memory_desc_init_by_tag(&x, 2, xs, dnnl_f32, dnnl_ab));
    DNNL_TRY(d, dnnl_memory_desc_init_by_tag(&w, 2, ws, dnnl_f32, dnnl_format_tag_any));
    DNNL_TRY(d, dnnl_memory_desc_init_by_tag(&out, 2, os, dnnl_f32, dnnl_ab));
    DNNL_TRY(d, dnnl_memory_desc_init_by_tag(&b, 2, bs, dnnl_f32, dnnl_ab));
    dnnl_primitive_attr_t attr;
    DNNL_TRY(d, dnnl_primitive_attr_create(&attr));
    DNNL_TRY(d, dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_desc_t description;
    DNNL_TRY(d, dnnl_matmul_desc_init(&matmul, &x, &w, p->bias ? &b : NULL, &out));
    DNNL_TRY(d, dnnl_primitive_desc_create(&description, &matmul, attr, d->engine, NULL));
    p->weights = *dnnl_primitive_desc_query_md(description, dnnl_query_weights_md, 0);
    p->packed = p->weights.format_desc.blocking.inner_nblks > 0;
    if (!p->packed) { /* a transposed copy would be no faster than the weights themselves */
        dnnl_primitive_desc_destroy(description);
        DNNL_TRY(d, dnnl_memory_desc_init_by_tag(&p->weights, 2, ws, dnnl_f32, dnnl_ba));
        DNNL_TRY(d, dnnl_matmul_desc_init(&matmul, &x, &p->weights, p->bias ? &b : NULL, &out));
        DNNL_TRY(d, dnnl_primitive_desc_create(&description, &matmul, attr, d->engine, NULL));
    }
    const dnnl_memory_desc_t scratchpad = *dnnl_primitive_desc_query_md(description, dnnl_query_scratchpad_md, 0);
    p->scratchpad_bytes = dnnl_memory_desc_get_size(&scratchpad);
    DNNL_TRY(d, dnnl_primitive_create(&p->primitive, description));
    dnnl_primitive_desc_destroy(description);
    dnnl_primitive_attr_destroy(attr);
    DNNL_TRY(d, dnnl_memory_create(&p->x, &x, d->engine, DNNL_MEMORY_NONE));
    DNNL_TRY(d, dnnl_memory_create(&p->w, &p->weights, d->engine, DNNL_MEMORY_NONE));
    DNNL_TRY(d, dnnl_memory_create(&p->b, &b, d->engine, DNNL_MEMORY_NONE));
    DNNL_TRY(d, dnnl_memory_create(&p->out, &out, d->engine, DNNL_MEMORY_NONE));
    DNNL_TRY(d, dnnl_memory_create(&p->scratchpad, &scratchpad, d->engine, DNNL_MEMORY_NONE));
}

static inline void gemm_plans_clear(Device *d) {
    for (int i = 0; i < GEMM_PLANS; i++) {
        GemmPlan *p = &d->plans[i];
        if (!p->used) continue;
        dnnl_primitive_destroy(p->primitive);
        dnnl_memory_destroy(p->x), dnnl_memory_destroy(p->w), dnnl_memory_destroy(p->b), dnnl_memory_destroy(p->out);
        dnnl_memory_destroy(p->scratchpad);
    }
    memset(d->plans, 0, GEMM_PLANS * sizeof *d->plans);
    d->plan_count = 0;
}

static inline GemmPlan *gemm_plan(Device *d, int N, int M, int K, bool bias) {
    if (d->plan_count > GEMM_PLANS / 2) gemm_plans_clear(d);
    uint64_t hash = (uint64_t)bias;
    hash = (hash * 0x9E3779B97F4A7C15u) ^ (uint64_t)N;
    hash = (hash * 0x9E3779B97F4A7C15u) ^ (uint64_t)M;
    hash = (hash * 0x9E3779B97F4A7C15u) ^ (uint64_t)K;
    hash *= 0x9E3779B97F4A7C15u;
    for (uint32_t i = (uint32_t)(hash >> 40);; i++) {
        GemmPlan *p = &d->plans[i % GEMM_PLANS];
        if (p->used && p->N == N && p->M == M && p->K == K && p->bias == bias) return p;
        if (p->used) continue;
        *p = (GemmPlan){.N = N, .M = M, .K = K, .bias = bias, .used = true};
        d->plan_count++;
        gemm_plan_make(d, p);
        return p;
    }
}

/* Returns memory for a pack. Decode reads all packs at each step, and in pages of 4 KB the misses of the TLB take a tenth of
 * that time, so that packs share pools of huge pages. */
static inline void *gemm_pool_take(Device *d, size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    GemmPool *pool = d->pool_count ? &d->pools[d->pool_count - 1] : NULL;
    if (!pool || pool->bytes - pool->used < bytes) {
        const size_t whole = (bytes + CPU_HUGE_PAGE - 1) / CPU_HUGE_PAGE * CPU_HUGE_PAGE;
        d->pools = (GemmPool *)xrealloc(d->pools, (size_t)d->pool_count + 1, sizeof *d->pools);
        pool = &d->pools[d->pool_count++];
        *pool = (GemmPool){.bytes = whole > GEMM_POOL ? whole : GEMM_POOL};
        pool->memory = (char *)checked(aligned_alloc(CPU_HUGE_PAGE, pool->bytes), pool->bytes);
        cpu_huge_pages(pool->memory, pool->bytes);
    }
    char *memory = pool->memory + pool->used;
    pool->used += bytes;
    pool->packs++;
    return memory;
}

/* Returns the memory of a pack to the system: its pages, and the whole pool after its last pack. */
static inline void gemm_pool_give(Device *d, void *memory, size_t bytes) {
    const uintptr_t at = (uintptr_t)memory, page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = (at + page - 1) / page * page, last = (at + bytes) / page * page;
    GemmPool *pool = d->pools;
    while (at - (uintptr_t)pool->memory >= pool->bytes) pool++;
    if (--pool->packs) {
        if (first < last) madvise((void *)first, last - first, MADV_DONTNEED);
        return;
    }
    free(pool->memory);
    *pool = d->pools[--d->pool_count];
}

/* Adds a pack, with memory for its weights. */
static inline GemmPack *gemm_pack_add(Device *d, GemmPack pack) {
    d->packs = (GemmPack *)xrealloc(d->packs, (size_t)d->pack_count + 1, sizeof *d->packs);
    pack.weights = gemm_pool_take(d, pack.bytes);
    d->alive += pack.bytes;
    d->packs[d->pack_count] = pack;
    return &d->packs[d->pack_count++];
}

/* Returns the weights w [M,K] in a layout of [K,M]. */
static inline void *gemm_packed(Device *d, const dnnl_memory_desc_t *layout, const float *w) {
    GemmPack *pack = NULL;
    for (int i = 0; i < d->pack_count && !pack; i++)
        if (d->packs[i].from == w && dnnl_memory_desc_equal(&d->packs[i].layout, layout)) pack = &d->packs[i];
    if (!pack)
        pack = gemm_pack_add(d, (GemmPack){.from = w,
                                           .count = (size_t)(layout->dims[0] * layout->dims[1]),
                                           .layout = *layout,
                                           .bytes = dnnl_memory_desc_get_size(layout)});
    if (!pack->fresh) {
        dnnl_memory_desc_t plain;
        dnnl_memory_t from, to;
        dnnl_primitive_desc_t description;
        dnnl_primitive_t reorder;
        dnnl_status_t s = dnnl_memory_desc_init_by_tag(&plain, 2, layout->dims, dnnl_f32, dnnl_ba);
        if (!s) s = dnnl_memory_create(&from, &plain, d->engine, (void *)(uintptr_t)w);
        if (!s) s = dnnl_memory_create(&to, layout, d->engine, pack->weights);
        if (!s) s = dnnl_reorder_primitive_desc_create(&description, &plain, d->engine, layout, d->engine, NULL);
        if (!s) s = dnnl_primitive_create(&reorder, description);
        if (s) {
            cpu_fail(d, "reorder of weights", (int)s);
            return NULL;
        }
        const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
        s = dnnl_primitive_execute(reorder, d->stream, 2, args);
        if (s) cpu_fail(d, "reorder of weights", (int)s);
        dnnl_stream_wait(d->stream);
        dnnl_primitive_destroy(reorder), dnnl_primitive_desc_destroy(description);
        dnnl_memory_destroy(from), dnnl_memory_destroy(to);
        pack->fresh = true;
    }
    return pack->weights;
}

/* Scratch memory for operands in bfloat16. */
static inline uint16_t *gemm_half(Device *d, int which, size_t count) {
    d->half[which] = (uint16_t *)cpu_scratch(d, d->half[which], &d->half_count[which], count, sizeof *d->half[which]);
    return d->half[which];
}

/* Returns whether a product has more rows than those for which a packed copy of the weights is made and kept. A copy of all
 * weights is worth its memory only for decode: packing them each time costs little beside so many rows. In float32 on AVX-512,
 * oneDNN's layout for these products is that of the copy, and they make and keep it, too. */
static inline bool gemm_passing(int N) { return N > GEMM_KEPT_ROWS; }

#ifdef CPU_TILES
/* tiles_pack_team(), tiles_pack_both_team(), tiles_turn_team() and tiles_product_team(), by all threads if it is worth it. */
static inline void cpu_tiles_pack(uint16_t *to, TilesForm form, const void *x, bool half, size_t ld, int n, int depth) {
#pragma omp parallel if (cpu_worth((size_t)n * (size_t)depth))
    tiles_pack_team(to, form, x, half, ld, n, depth);
}

static inline void cpu_tiles_pack_both(uint16_t *transposed, uint16_t *pairs, const float *x, int n, int depth) {
#pragma omp parallel if (cpu_worth((size_t)n * (size_t)depth))
    tiles_pack_both_team(transposed, pairs, x, n, depth);
}

static inline void cpu_tiles_turn(uint16_t *to, const uint16_t *from, int n, int depth, bool pairs) {
#pragma omp parallel if (cpu_worth((size_t)n * (size_t)depth))
    tiles_turn_team(to, from, n, depth, pairs);
}

static inline void cpu_tiles_product(const TilesProduct *p) {
#pragma omp parallel if (cpu_worth_product(p->rows, p->cols, p->depth))
    tiles_product_team(p);
}

/* Returns the weights w [M, K], packed as the right operand w^T (TILES_PAIRS_TRANSPOSED), for a product of N rows. NULL: there
 * is no packed copy yet, and a product of so many rows makes none. */
static inline const uint16_t *gemm_tiles(Device *d, const float *w, int N, int M, int K) {
    const size_t count = (size_t)M * (size_t)K, bytes = tiles_count(M, K) * sizeof(uint16_t);
    GemmPack *pack = NULL;
    for (int i = 0; i < d->pack_count && !pack; i++)
        if (d->packs[i].from == w && d->packs[i].count == count && d->packs[i].depth == K) pack = &d->packs[i];
    if (!pack && gemm_passing(N)) return NULL;
    if (!pack) pack = gemm_pack_add(d, (GemmPack){.from = w, .count = count, .depth = K, .bytes = bytes});
    if (!pack->fresh) cpu_tiles_pack((uint16_t *)pack->weights, TILES_PAIRS_TRANSPOSED, w, false, (size_t)K, M, K);
    pack->fresh = true;
    return (const uint16_t *)pack->weights;
}

/* Scratch memory for the partial sums of products. */
static inline float *gemm_sums(Device *d) {
    const size_t count = tiles_sums_count(omp_get_max_threads());
    return d->sums = (float *)cpu_scratch(d, d->sums, &d->sums_count, count, sizeof(float));
}
#endif

/* Marks every pack that holds some of the n floats at w as stale, because they have new values. drop: also frees those
 * packs, because the memory of the weights is released. */
static inline void gemm_weights_changed(Device *d, const float *w, size_t n, bool drop) {
    for (int i = d->pack_count - 1; i >= 0; i--) {
        GemmPack *pack = &d->packs[i];
        if (pack->from + pack->count <= w || pack->from >= w + n) continue;
        pack->fresh = false;
        if (!drop) continue;
        gemm_pool_give(d, pack->weights, pack->bytes);
        d->alive -= pack->bytes;
        *pack = d->packs[--d->pack_count];
    }
}

/* Rows of the plan for N rows. */
static inline int gemm_rows(int N) { return (N + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN; }

/* A batch of any length uses few plans, each of which holds some 100 KB of code: rows of the result are computed in
 * blocks of 512, 256 and 128, with up to 128 in the last one. Up to 256 rows are one block. */
static inline int gemm_block(int N, int rows_left) {
    if (N <= 256 || rows_left <= 128) return rows_left;
    return rows_left >= 512 ? 512 : rows_left >= 256 ? 256 : 128;
}

static inline void gemm_run(Device *d, GemmPlan *p, const float *x, void *w, const float *b, float *out) {
    if (d->failed) return;
    dnnl_memory_set_data_handle(p->x, (void *)(uintptr_t)x);
    dnnl_memory_set_data_handle(p->w, w);
    dnnl_memory_set_data_handle(p->out, out);
    if (b) dnnl_memory_set_data_handle(p->b, (void *)(uintptr_t)b);
    d->scratchpad = (uint8_t *)cpu_scratch(d, d->scratchpad, &d->scratchpad_count, p->scratchpad_bytes, 1);
    dnnl_memory_set_data_handle(p->scratchpad, d->scratchpad);
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->x},
                                    {DNNL_ARG_WEIGHTS, p->w},
                                    {DNNL_ARG_DST, p->out},
                                    {DNNL_ARG_SCRATCHPAD, p->scratchpad},
                                    {DNNL_ARG_BIAS, p->b}};
    DNNL_TRY(d, dnnl_primitive_execute(p->primitive, d->stream, b ? 5 : 4, args));
    DNNL_TRY(d, dnnl_stream_wait(d->stream));
}

/* out[N,M] = x[N,K] w[M,K]^T + b for few rows. */
static inline void gemm_panels(Device *d, float *out, const float *x, const float *w, const float *b, int N, int M,
                               int K) {
    const dnnl_dims_t dims = {K, M};
    dnnl_memory_desc_t layout;
    DNNL_TRY(d, dnnl_memory_desc_init_by_tag(&layout, 2, dims, dnnl_f32, dnnl_BA16a64b));
    const float *packed = (const float *)gemm_packed(d, &layout, w);
    if (d->failed) return;
    const PanelsProduct p = {.rows = N, .cols = M, .depth = K, .x = x, .w = packed, .bias = b, .out = out};
#pragma omp parallel if (cpu_worth_product(N, M, K))
    panels_product_team(&p);
}

/* out[N,M] = x[N,K] w[M,K]^T + b; more rows than few are computed in blocks, by oneDNN. */
static inline void gemm_rows_by_weights(Device *d, float *out, const float *x, const float *w, const float *b, int N,
                                        int M, int K) {
    if (!gemm_passing(N)) return gemm_panels(d, out, x, w, b, N, M, K);
    for (int first = 0, rows; first < N; first += rows) {
        rows = gemm_block(N, N - first);
        GemmPlan *p = gemm_plan(d, gemm_rows(rows), M, K, b != NULL);
        if (d->failed) return;
        void *weights = p->packed ? gemm_packed(d, &p->weights, w) : (void *)(uintptr_t)w;
        gemm_run(d, p, x + (size_t)first * (size_t)K, weights, b, out + (size_t)first * (size_t)M);
    }
}

#ifdef CPU_TILES
/* The product p, of which a, b and sums are still missing, of x and w in packed blocks: w [M,K] if transposed, otherwise
 * [K,M]. x_half: x is bfloat16. */
static inline void gemm_product_bf16(Device *d, TilesProduct p, bool transposed, const void *x, bool x_half,
                                     const float *w) {
    const int N = p.rows, M = p.cols, K = p.depth;
    const bool plain = x_half && K % TILES_BLOCK == 0 && !tiles_amx();
    const uint16_t *kept = transposed ? gemm_tiles(d, w, N, M, K) : gemm_tiles(d, w, N, K, M);
    uint16_t *left = plain ? NULL : gemm_half(d, 0, tiles_count(N, K));
    uint16_t *right = kept && transposed ? NULL : gemm_half(d, 1, tiles_count(M, K));
    p.a = plain ? (const uint16_t *)x : left;
    p.lda = plain ? (size_t)K : 0;
    p.b = right ? right : kept;
    p.sums = gemm_sums(d);
#pragma omp parallel if (cpu_worth_product(N, M, K))
    {
        if (left) tiles_pack_team(left, TILES_ROWS, x, x_half, (size_t)K, N, K);
        if (right && kept) tiles_turn_team(right, kept, K, M, true);
        else if (right && transposed) tiles_pack_team(right, TILES_PAIRS_TRANSPOSED, w, false, (size_t)K, M, K);
        else if (right) tiles_pack_team(right, TILES_PAIRS, w, false, (size_t)M, M, K);
        tiles_product_team(&p);
    }
}

/* out[N,M] = x[N,K] w + b. out_half: out is bfloat16. */
static inline void gemm_rows_by_weights_bf16(Device *d, bool transposed, void *out, bool out_half, const void *x,
                                             bool x_half, const float *w, const float *b, int N, int M, int K) {
    const TilesProduct p = {.rows = N,
                            .cols = M,
                            .depth = K,
                            .bias = b,
                            .out = out_half ? NULL : (float *)out,
                            .half = out_half ? (uint16_t *)out : NULL,
                            .ldo = (size_t)M};
    gemm_product_bf16(d, p, transposed, x, x_half, w);
}

/* out[M,K] += or = y[N,M]^T x[N,K] in packed blocks. y_half: y is bfloat16. sums: NULL, or, only if y is bfloat16, where the
 * sums of its columns are added, [M]. */
static inline void gemm_tn_sums_bf16(Device *d, float *out, float *sums, const void *y, bool y_half, const Act *x,
                                     int N, int M, int K) {
    if (sums)
        d->partial =
            (float *)cpu_scratch(d, d->partial, &d->partial_count, (size_t)TILES_PARTS * (size_t)M, sizeof(float));
    uint16_t *left = gemm_half(d, 0, tiles_count(M, N)), *right = gemm_half(d, 1, tiles_count(K, N));
    const TilesProduct p = {.rows = M,
                            .cols = K,
                            .depth = N,
                            .a = left,
                            .b = right,
                            .epilogue = gemm_stores(d, out) ? TILES_STORE : TILES_ADD,
                            .out = out,
                            .ldo = (size_t)K,
                            .sums = gemm_sums(d)};
#pragma omp parallel if (cpu_worth_product(N, M, K))
    {
        if (sums) tiles_pack_sums_team(left, (const uint16_t *)y, M, N, d->partial, sums);
        else tiles_pack_team(left, TILES_ROWS_TRANSPOSED, y, y_half, (size_t)M, M, N);
        tiles_pack_team(right, TILES_PAIRS, x, ACT_HALF, (size_t)K, K, N);
        tiles_product_team(&p);
    }
}

static inline void gemm_tn_bf16(Device *d, float *out, const void *y, bool y_half, const Act *x, int N, int M, int K) {
    gemm_tn_sums_bf16(d, out, NULL, y, y_half, x, N, M, K);
}
#endif

#if defined CPU_HALF && !defined CPU_TILES
/* The same two without bfloat16 arithmetic: products in float32 of operands that are converted, up to GEMM_WIDE_ROWS rows at
 * a time. The parts are equal, so that all of them are of few rows (gemm_passing()) or none. Weights are not rounded. */
static inline void gemm_rows_by_weights_bf16(Device *d, bool transposed, void *out, bool out_half, const void *x,
                                             bool x_half, const float *w, const float *b, int N, int M, int K) {
    const int parts = (N + GEMM_WIDE_ROWS - 1) / GEMM_WIDE_ROWS;
    for (int part = 0; part < parts; part++) {
        const int first = (int)((long)N * part / parts), n = (int)((long)N * (part + 1) / parts) - first;
        const size_t rows = (size_t)gemm_rows(n), in = (size_t)first * (size_t)K, at = (size_t)first * (size_t)M;
        Acts *half = (Acts *)((Act *)out + at);
        const float *from = (const float *)x + in;
        float *to = (float *)out + at;
        if (x_half) from = cpu_wide(d, GEMM_WIDE, (const Acts *)((const Act *)x + in), rows * (size_t)K, true);
        if (out_half) to = cpu_wide(d, GEMM_WIDE + 1, half, rows * (size_t)M, false);
        if (transposed) gemm_rows_by_weights(d, to, from, w, b, n, M, K);
        else DNNL_TRY(d, dnnl_sgemm('N', 'N', n, M, K, 1.0f, from, K, w, M, 0.0f, to, M));
        if (out_half) cpu_narrow(half, to, (size_t)n * (size_t)M);
    }
}

static inline void gemm_tn_bf16(Device *d, float *out, const void *y, bool y_half, const Act *x, int N, int M, int K) {
    const float initial = gemm_stores(d, out) ? 0.0f : 1.0f;
    for (int first = 0; first < N; first += GEMM_WIDE_ROWS) {
        const int n = N - first < GEMM_WIDE_ROWS ? N - first : GEMM_WIDE_ROWS;
        const size_t left = (size_t)first * (size_t)M, right = (size_t)first * (size_t)K;
        const float *from = (const float *)y + left;
        if (y_half) from = cpu_wide(d, GEMM_WIDE, (const Acts *)((const Act *)y + left), (size_t)n * (size_t)M, true);
        const float *by = cpu_wide(d, GEMM_WIDE + 1, (const Acts *)(x + right), (size_t)n * (size_t)K, true);
        DNNL_TRY(d, dnnl_sgemm('T', 'N', M, K, n, 1.0f, from, M, by, K, first ? 1.0f : initial, out, K));
    }
}
#endif

#ifdef CPU_HALF
static inline void gemm_nt(Device *d, Act *out, const Act *x, const float *w, const float *b, int N, int M, int K) {
    gemm_rows_by_weights_bf16(d, true, out, true, x, true, w, b, N, M, K);
}

static inline void gemm_nt_floats(Device *d, float *out, const Act *x, const float *w, int N, int M, int K) {
    gemm_rows_by_weights_bf16(d, true, out, false, x, true, w, NULL, N, M, K);
}

static inline void gemm_nn(Device *d, Act *out, const Act *x, const float *w, int N, int M, int K) {
    gemm_rows_by_weights_bf16(d, false, out, true, x, true, w, NULL, N, M, K);
}

static inline void gemm_nn_floats(Device *d, Act *out, const float *x, const float *w, int N, int M, int K) {
    gemm_rows_by_weights_bf16(d, false, out, true, x, false, w, NULL, N, M, K);
}

static inline void gemm_tn(Device *d, float *out, const Act *y, const Act *x, int N, int M, int K) {
    gemm_tn_bf16(d, out, y, true, x, N, M, K);
}

static inline void gemm_tn_floats(Device *d, float *out, const float *y, const Act *x, int N, int M, int K) {
    gemm_tn_bf16(d, out, y, false, x, N, M, K);
}
#else
static inline void gemm_nt(Device *d, float *out, const float *x, const float *w, const float *b, int N, int M, int K) {
#ifdef CPU_TILES
    if (d->dtype == DTYPE_BF16) return gemm_rows_by_weights_bf16(d, true, out, false, x, false, w, b, N, M, K);
#endif
    gemm_rows_by_weights(d, out, x, w, b, N, M, K);
}

static inline void gemm_nn(Device *d, float *out, const float *x, const float *w, int N, int M, int K) {
#ifdef CPU_TILES
    if (d->dtype == DTYPE_BF16) return gemm_rows_by_weights_bf16(d, false, out, false, x, false, w, NULL, N, M, K);
#endif
    DNNL_TRY(d, dnnl_sgemm('N', 'N', N, M, K, 1.0f, x, K, w, M, 0.0f, out, M));
}

static inline void gemm_tn(Device *d, float *out, const float *y, const float *x, int N, int M, int K) {
#ifdef CPU_TILES
    if (d->dtype == DTYPE_BF16) return gemm_tn_bf16(d, out, y, false, x, N, M, K);
#endif
    DNNL_TRY(d, dnnl_sgemm('T', 'N', M, K, N, 1.0f, y, M, x, K, gemm_stores(d, out) ? 0.0f : 1.0f, out, K));
}

/* Those whose out (NT), x (NN) or y (TN) is float even if activations are not: logits. */
static inline void gemm_nt_floats(Device *d, float *out, const Act *x, const float *w, int N, int M, int K) {
    gemm_nt(d, out, x, w, NULL, N, M, K);
}

static inline void gemm_nn_floats(Device *d, Act *out, const float *x, const float *w, int N, int M, int K) {
    gemm_nn(d, out, x, w, N, M, K);
}

static inline void gemm_tn_floats(Device *d, float *out, const float *y, const Act *x, int N, int M, int K) {
    gemm_tn(d, out, y, x, N, M, K);
}
#endif

#endif
