/* frozen.h - backward passes without the gradients of weights, as models with adapters request them.
 *
 * The contract (backend.h) says which gradients may be NULL. The other results must then have the same bits as with
 * all of them.
 *
 *     frozen_check(B, D);
 */
#ifndef TESTS_FROZEN_H
#define TESTS_FROZEN_H

#include "../llmc/base/error.h"    /* xmalloc, Error */
#include "../llmc/base/random.h"   /* Random, random_normal, random_real, random_start */
#include "../llmc/model/backend.h" /* Acts, Weights, Backend, Device, ... */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

enum { FROZEN_ROWS = 37, FROZEN_IN = 24, FROZEN_OUT = 40, FROZEN_RESULTS = 3, FROZEN_HELD = 16 };

/* One call of an operation: its memory, and its results as bytes. */
typedef struct Frozen {
    const Backend *b;
    Device *d;
    Random random;
    void *held[FROZEN_HELD];
    size_t held_size[FROZEN_HELD];
    int count;
    unsigned char *result[FROZEN_RESULTS];
    size_t bytes[FROZEN_RESULTS];
} Frozen;

static inline Frozen frozen_begin(const Backend *b, Device *d) {
    return (Frozen){.b = b, .d = d, .random = random_start(31, 0)};
}

/* Random values in the storage type, as Acts or Weights; in whole multiples of ROW_ALIGN rows. */
static inline void *frozen_stored(Frozen *f, int rows, int columns) {
    Error e;
    const size_t n = (size_t)(rows + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN * (size_t)columns;
    float *x = (float *)xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)random_normal(&f->random);
    void *memory = f->b->alloc(f->d, n * sizeof *x, "a test", &e);
    assert_non_null(memory);
    assert_true(f->count < FROZEN_HELD);
    f->b->weights_upload(f->d, (Weights *)memory, x, n);
    f->held_size[f->count] = n;
    f->held[f->count++] = memory;
    free(x);
    return memory;
}

/* The same as float32, between 0.5 and 1. */
static inline Floats *frozen_floats(Frozen *f, int n) {
    float *x = (float *)xmalloc((size_t)n * sizeof *x);
    Floats *memory = (Floats *)frozen_stored(f, n, 1);
    for (int i = 0; i < n; i++) x[i] = 0.5f + 0.5f * (float)random_real(&f->random);
    f->b->upload(f->d, memory, x, (size_t)n * sizeof *x);
    free(x);
    return memory;
}

static inline void frozen_result(Frozen *f, int which, const void *memory, size_t bytes) {
    f->bytes[which] = bytes;
    f->result[which] = (unsigned char *)xmalloc(bytes);
    f->b->download(f->d, f->result[which], memory, bytes);
}

/* Checks that the results are among those of `all`, and frees f's memory. */
static inline void frozen_end(Frozen *f, const Frozen *all) {
    Error e;
    if (!f->b->sync(f->d, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < FROZEN_RESULTS && all; i++) {
        if (f->bytes[i]) assert_memory_equal(f->result[i], all->result[i], f->bytes[i]);
        free(f->result[i]);
    }
    for (int i = 0; i < f->count; i++) f->b->weights_release(f->d, (Weights *)f->held[i], f->held_size[i]);
}

static inline void frozen_free(Frozen *all) {
    for (int i = 0; i < FROZEN_RESULTS; i++) free(all->result[i]);
}

/* linear_backward with the results in `mask`: 1 dx, 2 dw, 4 db, alone or followed by that of the GELU before it. */
static inline Frozen frozen_linear(const Backend *b, Device *d, int mask, bool gelu) {
    enum { N = FROZEN_ROWS, IC = FROZEN_IN, OC = FROZEN_OUT };
    Frozen f = frozen_begin(b, d);
    Acts *dx = (Acts *)frozen_stored(&f, N, IC), *x = (Acts *)frozen_stored(&f, N, IC);
    Acts *dout = (Acts *)frozen_stored(&f, N, OC);
    Weights *w = (Weights *)frozen_stored(&f, OC, IC);
    Floats *dw = frozen_floats(&f, OC * IC), *db = frozen_floats(&f, OC);
    b->linear_backward(d, mask & 1 ? dx : NULL, mask & 2 ? dw : NULL, mask & 4 ? db : NULL, dout, x, w, N, IC, OC);
    if (gelu && mask & 1) b->gelu_backward(d, dx, x, (size_t)(N * IC));
    if (mask & 1) frozen_result(&f, 0, dx, (size_t)(N * IC) * b->act_size);
    if (mask & 2) frozen_result(&f, 1, dw, (size_t)(OC * IC) * sizeof(float));
    if (mask & 4) frozen_result(&f, 2, db, OC * sizeof(float));
    return f;
}

static inline Frozen frozen_norm(const Backend *b, Device *d, NormKind kind, int columns, int fresh, bool weights) {
    enum { N = FROZEN_ROWS };
    Frozen f = frozen_begin(b, d);
    Norm n = {.rows = N, .channels = columns, .kind = kind, .eps = 1e-5f, .fresh = fresh};
    n.x = (Acts *)frozen_stored(&f, N, columns);
    n.dout = (Acts *)frozen_stored(&f, N, columns);
    n.dx = (Acts *)frozen_stored(&f, N, columns);
    n.w = (Weights *)frozen_stored(&f, columns, 1);
    n.mean = frozen_floats(&f, N);
    n.rstd = frozen_floats(&f, N);
    if (weights) n.dw = frozen_floats(&f, columns);
    if (weights && kind == NORM_LAYER) n.db = frozen_floats(&f, columns);
    b->norm_backward(d, &n);
    frozen_result(&f, 0, n.dx, (size_t)(N * columns) * b->act_size);
    return f;
}

static inline Frozen frozen_rotary(const Backend *b, Device *d, bool row, bool weights) {
    enum { N = FROZEN_ROWS, HEADS = 2, KV = 1, D = 16, Q = HEADS * D, K = KV * D, WIDTH = Q + 2 * K };
    Frozen f = frozen_begin(b, d);
    const int groups = row ? 2 : HEADS + KV;
    Rotary r = {.rows = N, .heads = HEADS, .kv_heads = KV, .head_size = D, .rotated = D, .stride = WIDTH};
    r.table_stride = D;
    r.q_group = row ? Q : D;
    r.k_group = row ? K : D;
    r.eps = 1e-5f;
    r.before_stride = Q + K;
    r.table = frozen_floats(&f, N * D);
    r.qw = (Weights *)frozen_stored(&f, r.q_group, 1);
    r.kw = (Weights *)frozen_stored(&f, r.k_group, 1);
    r.qk = (Acts *)frozen_stored(&f, N, WIDTH);
    r.before = (Acts *)frozen_stored(&f, N, Q + K);
    r.rstd = frozen_floats(&f, N * groups);
    if (weights) {
        r.dqw = frozen_floats(&f, r.q_group);
        r.dkw = frozen_floats(&f, r.k_group);
    }
    b->rotary_backward(d, &r);
    frozen_result(&f, 0, r.qk, (size_t)(N * WIDTH) * b->act_size);
    return f;
}

static inline Frozen frozen_head(const Backend *b, Device *d, bool weights) {
    enum { R = FROZEN_ROWS, C = FROZEN_IN, V = 120, VP = 128 };
    Frozen f = frozen_begin(b, d);
    int32_t target[R];
    for (int i = 0; i < R; i++) target[i] = i * 7 % V;
    Ints *targets = (Ints *)frozen_floats(&f, R);
    b->upload(d, targets, target, sizeof target);
    Head h = {.rows = R, .channels = C, .vocab = V, .padded_vocab = VP, .temperature = 1, .target = targets};
    h.h = (Acts *)frozen_stored(&f, R, C);
    h.weight = (Weights *)frozen_stored(&f, VP, C);
    h.logp = frozen_floats(&f, R);
    h.dlogp = frozen_floats(&f, R);
    h.dh = (Acts *)frozen_stored(&f, R, C);
    if (weights) h.dweight = frozen_floats(&f, VP * C);
    b->head(d, &h);
    frozen_result(&f, 0, h.dh, (size_t)(R * C) * b->act_size);
    frozen_result(&f, 1, h.logp, R * sizeof(float));
    return f;
}

/* Ends a call without gradients of weights and one with them. */
static inline void frozen_compare(Frozen without, Frozen all) {
    frozen_end(&all, NULL);
    frozen_end(&without, &all);
    frozen_free(&all);
}

static inline void frozen_check(const Backend *b, Device *d) {
    static const int columns[] = {7, FROZEN_IN, 768};
    for (int mask = 0; mask < 7; mask++)
        for (int gelu = 0; gelu < 2; gelu++)
            frozen_compare(frozen_linear(b, d, mask, gelu), frozen_linear(b, d, 7, gelu));
    for (int i = 0; i < 3; i++)
        for (int fresh = 0; fresh < 2; fresh++)
            for (NormKind kind = NORM_LAYER; kind <= NORM_RMS; kind++)
                frozen_compare(frozen_norm(b, d, kind, columns[i], fresh, false),
                               frozen_norm(b, d, kind, columns[i], fresh, true));
    for (int row = 0; row < 2; row++) frozen_compare(frozen_rotary(b, d, row, false), frozen_rotary(b, d, row, true));
    frozen_compare(frozen_head(b, d, false), frozen_head(b, d, true));
}

#endif
