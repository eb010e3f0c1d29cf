/* test_backend.c - every operation of the table in backend.h against loops in float64 written from the formula.
 *
 * The head and sampling are tested in test_head.c, divergences in test_divergence.c; attention is tested here and in
 * test_attention.c. Operations without a matrix product must give the same bits with any number of threads. Those with one
 * (linear_*, head, logits, sample) leave the order of sums to the library and must agree within the tolerance. */
#include "../llmc/base/error.h"      /* Error */
#include "../llmc/base/random.h"     /* Random, random_start, RANDOM_NOISE, random_uniform */
#include "../llmc/cpu/cpu.h"         /* CPU_CODE_BYTES, backend_cpu_for */
#include "../llmc/cpu/gemm.h"        /* GEMM_PLANS */
#include "../llmc/model/backend.h"   /* Acts, Floats, Weights, Device, ... */
#include "../llmc/model/batch.h"     /* Segment */
#include "../llmc/model/quantized.h" /* QUANT_BLOCK, quant_info */
#include "arrays.h"                  /* DOUBLES, sums, sum_add, FLOATS, ... */
#include "cpu_device.h"              /* B, D, close_device, open_device */
#include "device.h"                  /* noise, acts, fetch, floats, ... */
#include "frozen.h"                  /* frozen_check */
#include "quant_blocks.h"            /* quant_random */

/* A new operation changes the size: write its test, then change this number. The table holds a name, two sizes, a level and 59
 * operations. */
_Static_assert(sizeof(Backend) == (4 + 59) * sizeof(void *), "backend.h has an operation that has no test");

/* ==== The device ==== */

static void test_table(void **state) {
    (void)state;
    const void *entries[sizeof(Backend) / sizeof(void *)];
    memcpy(entries, B, sizeof entries);
    for (size_t i = 0, missing = 0; i < sizeof entries / sizeof *entries; i++) {
        missing += !entries[i];
        assert_true(missing <= 5);
    }
    /* the members that only a device with its own memory and queue has, and those for activations in bfloat16 */
    assert_true(!B->nominal_peak && !B->memory_peak && !B->stream && !B->recompute && !B->mlp_backward);
    assert_string_equal(B->name, "cpu");
    assert_true(B->weight_size == 4 && B->act_size == 4);
    assert_true(weights_at(B, (Weights *)64, 3) == (Weights *)(64 + 3 * B->weight_size));
    assert_true(acts_at(B, (Acts *)64, 3) == (Acts *)(64 + 3 * B->act_size));
    assert_true(floats_at((Floats *)64, 3) == (Floats *)76 && ints_at((Ints *)64, 3) == (Ints *)76);
}

/* The weights were changed by other code: after weights_changed() products use the new ones. */
static void test_weights_changed(void **state) {
    (void)state;
    enum { N = 8, C = 64 };
    float x[N * C], w[C * C];
    for (int i = 0; i < N * C; i++) x[i] = 1;
    for (int i = 0; i < C * C; i++) w[i] = 1;
    Weights *device = weights(w, C * C);
    Acts *in = acts(x, N, C), *out = acts(NULL, N, C);
    for (int twice = 0; twice < 2; twice++) B->linear_forward(D, out, in, device, NULL, N, C, C);
    assert_true(fetch(out, 1)[0] == C);
    for (int i = 0; i < C * C; i++) ((float *)device)[i] = 3;
    B->weights_changed(D, device, C * C);
    B->linear_forward(D, out, in, device, NULL, N, C, C);
    const float *got = fetch(out, N * C);
    for (int i = 0; i < N * C; i++) assert_true(got[i] == 3 * C);
}

static void test_memory(void **state) {
    (void)state;
    Error e;
    Random r = random_start(1, 0);
    enum { N = 3000001 }; /* several blocks of zero() and one byte more */
    float *x = noise(&r, N, 1);
    Weights *w = weights(x, N);
    float *back = FLOATS(N);
    B->weights_download(D, back, w, N);
    assert_memory_equal(back, x, N * sizeof *x);
    Floats *f = floats(x, N);
    B->zero(D, f, (N - 2) * sizeof *x);
    back = fetch(f, N);
    for (int i = 0; i < N - 2; i++) assert_true(back[i] == 0);
    assert_true(back[N - 2] == x[N - 2] && back[N - 1] == x[N - 1]);
    B->zero(D, f, 0);
    B->upload(D, f, x, 0);
    assert_null(B->alloc(D, SIZE_MAX / 2, "the moon", &e));
    assert_non_null(strstr(e.text, "the moon"));
    assert_non_null(strstr(e.text, "9223372036854775807"));
    assert_null(B->alloc(D, SIZE_MAX, "the moon", &e));
    assert_null(B->alloc_zeroed(D, SIZE_MAX, "the stars", &e));
    assert_non_null(strstr(e.text, "the stars"));
    for (size_t bytes = 1; bytes < 100000000; bytes = bytes * 7 + 13) {
        char *zeros = B->alloc_zeroed(D, bytes, "zeros", &e);
        assert_int_equal((uintptr_t)zeros % 64, 0);
        for (size_t i = 0; i < bytes; i += bytes / 1000 + 1) assert_int_equal(zeros[i], 0);
        memset(zeros, 1, bytes);
        B->release(D, zeros);
    }
    void *nothing = B->alloc(D, 0, "nothing", &e);
    assert_non_null(nothing);
    B->release(D, nothing);
    assert_true(B->sync(D, &e));
}

/* A failure is sticky and is reported by sync(). */
static void test_failure(void **state) {
    (void)state;
    Error e = {""};
    Device *broken;
    assert_true(B->open(&broken, DTYPE_FLOAT32, &e));
    float x[16 * 16] = {0};
    B->linear_forward(broken, (Acts *)x, (Acts *)x, (Weights *)x, NULL, 16, -1, 8);
    assert_false(B->sync(broken, &e));
    assert_non_null(strstr(e.text, "cpu: oneDNN "));
    B->linear_forward(broken, (Acts *)x, (Acts *)x, (Weights *)x, NULL, 16, 4, 4);
    assert_false(B->sync(broken, &e));
    B->close(broken);
}

static void test_peak(void **state) {
    (void)state;
    const size_t before = B->scratch_bytes(D);
    const double peak = B->peak(D);
    assert_true(peak > 1e8 && peak < 1e16);
    assert_true(B->scratch_bytes(D) == before);
}

/* The scratch memory is what is predicted without `code`, or half as much (a quarter with activations in bfloat16, whose
 * adapters are computed on copies), up to 16 KB per thread of single operations. */
static void check_scratch(Device *d, const ScratchUse *use, size_t code) {
    const size_t used = B->scratch_bytes(d), predicted = B->scratch_predict(d, use) - code;
    const size_t few = (size_t)omp_get_max_threads() << 14;
    if (!(used <= predicted + few && used * (B->act_size == 2 ? 4 : 2) >= predicted))
        fail_msg("%zu bytes, predicted %zu", used, predicted);
}

/* The memory of packed weights and scratch is counted, is predicted, and is freed with the weights. */
static void test_scratch(void **state) {
    (void)state;
    Error e;
    Random r = random_start(1, 1);
    enum { N = 64, C = 64, W = 1024, V = 1000, VP = 1024, RANK = 128, DRAWN = 512, ALL = (VP + W) * C };
    const Backend *const whole = B;
    for (int turn = 0; turn < 3; turn++) { /* float32, bfloat16, bfloat16 with activations in it */
        const int dtype = turn > 0;
        Device *d;
        B = turn == 2 ? backend_cpu_for(DTYPE_BF16) : whole;
        if (!B->open(&d, (Dtype)dtype, &e)) continue;
        assert_int_equal(B->scratch_bytes(d), 0);
        Weights *wte = B->alloc(d, VP * C * 4, "wte", &e), *w = B->alloc(d, W * C * 4, "w", &e);
        B->weights_upload(d, wte, noise(&r, VP * C, 1), VP * C);
        B->weights_upload(d, w, noise(&r, W * C, 1), W * C);
        Acts *x = acts(noise(&r, N * C, 1), N, C), *y = acts(NULL, N, C), *wide = acts(NULL, N, W);
        Floats *logp = floats(NULL, N), *dlogp = floats(noise(&r, N, 1), N);
        Floats *dwte = floats(FLOATS(VP * C), VP * C), *dw = floats(FLOATS(W * C), W * C);
        Ints *target = ints(picks(&r, N, V), N);
        B->linear_forward(d, wide, x, w, NULL, N, C, W);
        B->linear_backward(d, y, dw, NULL, wide, x, w, N, C, W);
        const Head h = {.rows = N,
                        .channels = C,
                        .vocab = V,
                        .padded_vocab = VP,
                        .temperature = 1,
                        .h = x,
                        .weight = wte,
                        .target = target,
                        .logp = logp,
                        .dlogp = dlogp,
                        .dh = y,
                        .dweight = dwte};
        B->head(d, &h);
        const Lora l = {.rows = N,
                        .in = C,
                        .rank = RANK,
                        .parts = 1,
                        .stride = C,
                        .count = {C},
                        .scale = 1,
                        .x = x,
                        .a = weights(noise(&r, RANK * C, 1), RANK * C),
                        .b = weights(noise(&r, C * RANK, 1), C * RANK),
                        .h = acts(noise(&r, N * RANK, 1), N, RANK),
                        .dout = x,
                        .dx = y,
                        .da = floats(FLOATS(RANK * C), RANK * C),
                        .db = floats(FLOATS(C * RANK), C * RANK)};
        const size_t without = B->scratch_bytes(d);
        B->lora_backward(d, &l);
        assert_true(B->scratch_bytes(d) >= without + 2 * N * RANK * sizeof(float)); /* h and its gradient */
        const size_t code = (size_t)(1 + dtype) * CPU_CODE_BYTES;
        ScratchUse use = {.weights = ALL, .rows = N, .width = C, .widest = W, .padded_vocab = VP, .adapters = RANK};
        check_scratch(d, &use, code);
        const size_t used = B->scratch_bytes(d);
        B->linear_forward(d, wide, x, w, NULL, N, C, W);
        assert_int_equal(B->scratch_bytes(d), used); /* nothing is allocated in a second step */
        const Draw draw = {.rows = DRAWN,
                           .channels = C,
                           .vocab = V,
                           .padded_vocab = VP,
                           .h = acts(noise(&r, DRAWN * C, 1), DRAWN, C),
                           .weight = wte,
                           .token = ints(NULL, DRAWN),
                           .logp = floats(NULL, DRAWN)};
        B->sample(d, &draw);
        use.sampled = DRAWN;
        check_scratch(d, &use, code);
        const size_t all = B->scratch_bytes(d);
        B->weights_release(d, wte, VP * C), B->weights_release(d, w, W * C);
        assert_true(B->scratch_bytes(d) + ALL * (dtype ? 2 : 4) <= all);
        assert_true(B->sync(d, &e));
        B->close(d);
    }
    B = whole;
}

enum { PACKED = 5, PACKED_COLUMNS = 1024 };
static const int packed_rows[PACKED] = {5120, 1024, 4096, 5120, 512};

/* Matrix i of test_packs(), all of whose elements are i + 1. */
static Weights *packed_weights(Device *d, int i) {
    Error e;
    const size_t n = (size_t)packed_rows[i] * PACKED_COLUMNS;
    float *values = FLOATS(n);
    for (size_t k = 0; k < n; k++) values[k] = (float)(i + 1);
    Weights *w = B->alloc(d, n * sizeof *values, "w", &e);
    B->weights_upload(d, w, values, n);
    return w;
}

/* Products of ones by the matrices that there are. They are exact. */
static void check_packed(Device *d, Weights *const *w, const Acts *x, Acts *y) {
    for (int i = 0; i < PACKED; i++) {
        if (!w[i]) continue;
        B->linear_forward(d, y, x, w[i], NULL, 1, PACKED_COLUMNS, packed_rows[i]);
        const float *got = fetch(y, (size_t)packed_rows[i]);
        for (int k = 0; k < packed_rows[i]; k++) assert_true(got[k] == (float)(PACKED_COLUMNS * (i + 1)));
    }
}

/* More packed weights than a pool of memory has: those that remain are right after others were released or were added. */
static void test_packs(void **state) {
    (void)state;
    Error e;
    static const int order[PACKED - 1] = {1, 3, 0, 4};
    float *ones = FLOATS(PACKED_COLUMNS);
    for (int i = 0; i < PACKED_COLUMNS; i++) ones[i] = 1;
    Acts *x = acts(ones, 1, PACKED_COLUMNS), *y = acts(NULL, 1, packed_rows[0]);
    for (int dtype = DTYPE_FLOAT32; dtype <= DTYPE_BF16; dtype++) {
        Device *d;
        Weights *w[PACKED];
        if (!B->open(&d, (Dtype)dtype, &e)) continue;
        for (int i = 0; i < PACKED; i++) w[i] = packed_weights(d, i);
        check_packed(d, w, x, y);
        for (int k = 0; k < PACKED - 1; k++) {
            const int i = order[k];
            const size_t n = (size_t)packed_rows[i] * PACKED_COLUMNS, before = B->scratch_bytes(d);
            B->weights_release(d, w[i], n);
            w[i] = NULL;
            assert_true(B->scratch_bytes(d) + n * (dtype ? 2 : 4) <= before);
            check_packed(d, w, x, y);
        }
        w[3] = packed_weights(d, 3);
        check_packed(d, w, x, y);
        for (int i = 0; i < PACKED; i++)
            if (w[i]) B->weights_release(d, w[i], (size_t)packed_rows[i] * PACKED_COLUMNS);
        assert_true(B->sync(d, &e));
        B->close(d);
    }
}

/* ==== Embedding, noise, rows ==== */

/* Rows of embeddings in blocks of several types: their values times the scale, plus those of positions. */
static void test_embed_blocks(void **state) {
    (void)state;
    Random r = random_start(23, 0);
    enum { N = 60, C = 768, V = 37, T = 9 };
    QuantMatrix q = {.parts = 3, .type = {QUANT_Q6_K, QUANT_Q8_0, QUANT_BF16}, .rows = {20, 12, V - 32}};
    float *wte = FLOATS(V * C);
    for (int part = 0, row = 0; part < q.parts; row += q.rows[part++])
        q.blocks[part] =
            (const Blocks *)quant_random(&r, (QuantType)q.type[part], (size_t)(q.rows[part] * C), wte + row * C);
    const float *wpe = noise(&r, T * C, 1), scale = 1.5f;
    const int32_t *token = picks(&r, N, V), *position = picks(&r, N, T);
    for (int positions = 0; positions < 2; positions++) {
        Acts *out = acts(NULL, N, C);
        B->quant_embed_forward(D, out, &q, positions ? weights(wpe, T * C) : NULL, ints(token, N), ints(position, N),
                               scale, N, C);
        double *want = DOUBLES(N * C), *size = DOUBLES(N * C);
        for (int i = 0; i < N * C; i++) {
            const double scaled = (double)scale * wte[token[i / C] * C + i % C],
                         at = positions ? wpe[position[i / C] * C + i % C] : 0;
            want[i] = scaled + at;
            size[i] = fabs(scaled) + fabs(at);
        }
        check("embeddings in blocks", fetch(out, N * C), want, size, 2, N * C);
    }
    for (int part = 0; part < q.parts; part++) free((void *)(uintptr_t)q.blocks[part]);
}

static void test_embed(void **state) {
    (void)state;
    Random r = random_start(2, 0);
    static const int shape[][4] = {/* N, C, V, T */ {1, 24, 5, 3}, {37, 24, 9, 7}, {50, 130, 257, 16}, {8, 1, 3, 3}};
    for (int s = 0; s < 4; s++) {
        const int N = shape[s][0], C = shape[s][1], V = shape[s][2], T = shape[s][3];
        const float *wte = noise(&r, (size_t)(V * C), 1), *wpe = noise(&r, (size_t)(T * C), 1);
        const int32_t *token = picks(&r, (size_t)N, V), *position = picks(&r, (size_t)N, T);
        Acts *out = acts(NULL, N, C);
        Ints *dt = ints(token, (size_t)N), *dp = ints(position, (size_t)N);
        B->embed_forward(D, out, weights(wte, (size_t)(V * C)), weights(wpe, (size_t)(T * C)), dt, dp, 1, N, C);
        const float *got = fetch(out, (size_t)(N * C));
        for (int i = 0; i < N; i++)
            for (int c = 0; c < C; c++) assert_true(got[i * C + c] == wte[token[i] * C + c] + wpe[position[i] * C + c]);
        const float *dout = noise(&r, (size_t)(N * C), 1);
        const float *t0 = noise(&r, (size_t)(V * C), 1), *p0 = noise(&r, (size_t)(T * C), 1);
        Floats *dwte = floats(t0, (size_t)(V * C)), *dwpe = floats(p0, (size_t)(T * C));
        Acts *dd = acts(dout, N, C);
        Sum wt = sums((size_t)(V * C), t0), wp = sums((size_t)(T * C), p0);
        for (int twice = 0; twice < 2; twice++) {
            B->embed_backward(D, dwte, dwpe, dd, dt, dp, 1, N, C);
            for (int i = 0; i < N; i++)
                for (int c = 0; c < C; c++) {
                    sum_add(wt, (size_t)(token[i] * C + c), dout[i * C + c]);
                    sum_add(wp, (size_t)(position[i] * C + c), dout[i * C + c]);
                }
            sum_check("dwte", fetch(dwte, (size_t)(V * C)), wt, 2 * N, (size_t)(V * C));
            sum_check("dwpe", fetch(dwpe, (size_t)(T * C)), wp, 2 * N, (size_t)(T * C));
        }
    }
}

/* A scale, and no positions. */
static void test_embed_scaled(void **state) {
    (void)state;
    Random r = random_start(22, 0);
    enum { N = 50, C = 130, V = 20 };
    const float *wte = noise(&r, V * C, 1), *dout = noise(&r, N * C, 1), *t0 = noise(&r, V * C, 1), scale = 25.298f;
    const int32_t *token = picks(&r, N, V);
    Acts *out = acts(NULL, N, C), *grad = acts(dout, N, C);
    Floats *dwte = floats(t0, V * C);
    Ints *dt = ints(token, N);
    double *want = DOUBLES(N * C);
    Sum sum = sums(V * C, t0);
    B->embed_forward(D, out, weights(wte, V * C), NULL, dt, NULL, scale, N, C);
    B->embed_backward(D, dwte, NULL, grad, dt, NULL, scale, N, C);
    for (int i = 0; i < N * C; i++) {
        const size_t at = (size_t)(token[i / C] * C + i % C);
        want[i] = (double)scale * wte[at];
        sum_add(sum, at, (double)scale * dout[i]);
    }
    check("scaled embeddings", fetch(out, N * C), want, NULL, 1, N * C);
    sum_check("their gradient", fetch(dwte, V * C), sum, 2 * N, V * C);
}

static void test_add(void **state) {
    (void)state;
    Random r = random_start(23, 0);
    enum { N = 20011 };
    const float *x = noise(&r, N, 1), *y = noise(&r, N, 1);
    Acts *dx = acts(x, N, 1);
    B->add(D, dx, acts(y, N, 1), N - 3);
    const float *got = fetch(dx, N);
    for (int i = 0; i < N; i++) assert_true(got[i] == (i < N - 3 ? x[i] + y[i] : x[i]));
}

/* x += scale u, u uniform in (-1, 1): range, moments, one draw per element, which depends only on (seed, stream,
 * record, position), not on the row. */
static void test_noise(void **state) {
    (void)state;
    enum { N = 300, C = 77 };
    Random r = random_start(3, 0);
    float *x = FLOATS(N * C), *scale = FLOATS(N);
    for (int i = 0; i < N; i++) scale[i] = i % 5 ? 0.25f * (float)(i % 5) : 0;
    Acts *device = acts(x, N, C), *other = acts(x, N, C), *few = acts(x, 10, C);
    Floats *s = floats(scale, N);
    int32_t record[N], position[N];
    for (int i = 0; i < N; i++) {
        record[i] = i / 40; /* records of 40 tokens, each from position 0 */
        position[i] = i % 40;
    }
    Ints *rec = ints(record, N), *pos = ints(position, N);
    B->noise_add(D, device, s, rec, pos, N, C, 42, RANDOM_NOISE + 7);
    const float *got = fetch(device, N * C);
    double sum = 0, squares = 0, product = 0;
    int n = 0;
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++) {
            const float y = got[i * C + c];
            if (scale[i] == 0) assert_true(y == 0);
            else {
                const double u = y / scale[i];
                assert_true(fabs(u) <= 1);
                const uint64_t stream = RANDOM_NOISE + 7 + (uint64_t)(i / 40), at = (uint64_t)(i % 40 * C + c);
                assert_true(fabs(u - (2 * (double)random_uniform(42, stream, at) - 1)) < 1e-6);
                sum += u;
                squares += u * u;
                n++;
                if (c) product += u * (got[i * C + c - 1] / scale[i]);
            }
        }
    assert_true(fabs(sum / n) < 5 / sqrt(3.0 * n));
    assert_true(fabs(squares / n - 1 / 3.0) < 5 * sqrt(4 / 45.0 / n));
    assert_true(fabs(product / n) < 5 / 3.0 / sqrt(n));
    /* other rows of another batch: the same record and positions get the same noise */
    B->noise_add(D, few, floats(scale + 85, 10), ints(record + 85, 10), ints(position + 85, 10), 10, C, 42,
                 RANDOM_NOISE + 7);
    assert_memory_equal(fetch(few, 10 * C), got + 85 * C, 10 * C * sizeof *got);
    B->noise_add(D, other, s, rec, pos, N, C, 42, RANDOM_NOISE + (1ull << 32) + 7);
    assert_memory_not_equal(fetch(other, N * C), got, N * C * sizeof *got);
    const float *start = noise(&r, C, 1); /* the operation adds to x */
    Acts *one = acts(start, 1, C);
    B->noise_add(D, one, s, rec, pos, 1, C, 1, 1); /* scale 0 changes nothing */
    assert_memory_equal(fetch(one, C), start, C * sizeof *start);
}

static void test_rows(void **state) {
    (void)state;
    Random r = random_start(4, 0);
    enum { N = 23, R = 41, C = 29 };
    const float *x = noise(&r, N * C, 1), *in = noise(&r, R * C, 1);
    const int32_t *row = picks(&r, R, N); /* some rows several times, some never */
    Acts *dx = acts(x, N, C), *out = acts(NULL, R, C);
    Ints *drow = ints(row, R);
    B->gather_rows(D, out, dx, drow, R, C);
    const float *got = fetch(out, R * C);
    for (int i = 0; i < R; i++) assert_memory_equal(got + i * C, x + row[i] * C, C * sizeof *x);
    float *want = FLOATS(N * C);
    memcpy(want, x, N * C * sizeof *x);
    for (int i = 0; i < R; i++)
        for (int c = 0; c < C; c++) want[row[i] * C + c] += in[i * C + c]; /* added in the order of r: the same bits */
    B->scatter_rows(D, dx, acts(in, R, C), drow, R, C);
    assert_memory_equal(fetch(dx, N * C), want, N * C * sizeof *x);
    B->gather_rows(D, out, dx, drow, 0, C);
    B->scatter_rows(D, dx, out, drow, 0, C);
    assert_memory_equal(fetch(dx, N * C), want, N * C * sizeof *x);
}

/* ==== Layernorm and RMSNorm ==== */

typedef struct NormReference {
    double *mean, *rstd, *n, *amplify; /* amplify: how much the rounding of an element counts in n */
} NormReference;

/* RMSNorm is layernorm without the subtraction of the mean. */
static NormReference norm_reference(const float *x, NormKind kind, int N, int C) {
    NormReference r = {DOUBLES((size_t)N), DOUBLES((size_t)N), DOUBLES((size_t)(N * C)), DOUBLES((size_t)N)};
    for (int i = 0; i < N; i++) {
        double sum = 0, variance = 0, size = 0;
        for (int c = 0; c < C; c++) {
            sum += x[i * C + c];
            size += fabs(x[i * C + c]) / C;
        }
        r.mean[i] = kind == NORM_RMS ? 0 : sum / C;
        for (int c = 0; c < C; c++) variance += pow(x[i * C + c] - r.mean[i], 2) / C;
        r.rstd[i] = 1 / sqrt(variance + 1e-5);
        for (int c = 0; c < C; c++) r.n[i * C + c] = (x[i * C + c] - r.mean[i]) * r.rstd[i];
        r.amplify[i] = size * r.rstd[i];
    }
    return r;
}

/* The arguments of a norm of x. */
static Norm norm_of(NormKind kind, Acts *x, Acts *out, Floats *mean, Floats *rstd, Weights *w, Weights *b, int N,
                    int C) {
    return (Norm){.rows = N,
                  .channels = C,
                  .kind = kind,
                  .eps = 1e-5f,
                  .w = w,
                  .b = kind == NORM_RMS ? NULL : b,
                  .x = x,
                  .mean = kind == NORM_RMS ? NULL : mean,
                  .rstd = rstd,
                  .out = out};
}

static void check_norm(const float *x, NormKind kind, Acts *out, Floats *mean, Floats *rstd, const float *w,
                       const float *b, int N, int C) {
    const NormReference r = norm_reference(x, kind, N, C);
    double *want = DOUBLES((size_t)(N * C)), *size = DOUBLES((size_t)(N * C)), *one = DOUBLES((size_t)N);
    for (int i = 0; i < N; i++) {
        one[i] = r.amplify[i] / r.rstd[i];
        for (int c = 0; c < C; c++) {
            const int at = i * C + c;
            want[at] = r.n[at] * w[c] + (kind == NORM_RMS ? 0 : b[c]);
            size[at] = (r.amplify[i] + 2 * fabs(r.n[at])) * fabs(w[c]) + fabs(b[c]);
        }
    }
    check(kind == NORM_RMS ? "RMSNorm" : "layernorm", fetch(out, (size_t)(N * C)), want, size, C + 8, (size_t)(N * C));
    if (kind == NORM_LAYER) check("mean", fetch(mean, (size_t)N), r.mean, one, C + 8, (size_t)N);
    for (int i = 0; i < N; i++) one[i] = r.rstd[i] * (1 + r.amplify[i]);
    check("rstd", fetch(rstd, (size_t)N), r.rstd, one, C + 8, (size_t)N);
}

static const int norm_shape[][2] = {/* N, C */ {1, 24}, {17, 24}, {100, 33}, {3, 1}, {40, 200}, {2, 768}};
enum { NORM_SHAPES = sizeof norm_shape / sizeof *norm_shape };

static void norm_forward_of(NormKind norm) {
    Random r = random_start(5, norm);
    for (int s = 0; s < NORM_SHAPES; s++)
        for (int kind = 0; kind < 3; kind++) { /* typical values; far from 0; almost equal ones, where eps matters */
            const int N = norm_shape[s][0], C = norm_shape[s][1];
            float *x = noise(&r, (size_t)(N * C), kind == 2 ? 1e-5 : 1), *delta = noise(&r, (size_t)(N * C), 1);
            for (int i = 0; i < N * C; i++) {
                x[i] += kind == 1 ? 50.0f : 0;
                delta[i] *= kind == 2 ? 1e-5f : 1;
            }
            const float *w = noise(&r, (size_t)C, 1), *b = noise(&r, (size_t)C, 1);
            Weights *dw = weights(w, (size_t)C), *db = weights(b, (size_t)C);
            Acts *dx = acts(x, N, C), *dd = acts(delta, N, C), *out = acts(NULL, N, C), *sum = acts(NULL, N, C);
            Floats *mean = floats(NULL, (size_t)N), *rstd = floats(NULL, (size_t)N);
            Norm p = norm_of(norm, dx, out, mean, rstd, dw, db, N, C);
            B->norm_forward(D, &p);
            check_norm(x, norm, out, mean, rstd, w, b, N, C);
            p.delta = dd;
            p.sum = sum;
            B->norm_forward(D, &p);
            for (int i = 0; i < N * C; i++) delta[i] = x[i] + delta[i];
            assert_memory_equal(fetch(sum, (size_t)(N * C)), delta, (size_t)(N * C) * sizeof *x);
            check_norm(delta, norm, out, mean, rstd, w, b, N, C);
            assert_memory_equal(fetch(dx, (size_t)(N * C)), x, (size_t)(N * C) * sizeof *x);
            const float *apart = fetch(out, (size_t)(N * C));
            p.sum = dx; /* in place */
            B->norm_forward(D, &p);
            assert_memory_equal(fetch(dx, (size_t)(N * C)), delta, (size_t)(N * C) * sizeof *x);
            assert_memory_equal(fetch(out, (size_t)(N * C)), apart, (size_t)(N * C) * sizeof *x);
        }
}

static void test_layernorm_forward(void **state) {
    (void)state;
    norm_forward_of(NORM_LAYER);
}

static void test_rmsnorm_forward(void **state) {
    (void)state;
    norm_forward_of(NORM_RMS);
}

/* The derivative of n_c = (x_c - mean) rstd by the chain rule, term by term:
 *   dn_k/dx_c = rstd (1{k=c} - 1/C - n_k n_c / C), without 1/C for RMSNorm, which has no mean */
static void norm_backward_of(NormKind norm) {
    Random r = random_start(6, norm);
    for (int s = 0; s < NORM_SHAPES; s++) {
        const int N = norm_shape[s][0], C = norm_shape[s][1];
        const size_t n = (size_t)(N * C);
        const float *x = noise(&r, n, 2), *dout = noise(&r, n, 1), *w = noise(&r, (size_t)C, 1);
        const float *x0 = noise(&r, n, 1), *w0 = noise(&r, (size_t)C, 1), *b0 = noise(&r, (size_t)C, 1);
        Weights *weight = weights(w, (size_t)C);
        Acts *act = acts(x, N, C), *grad = acts(dout, N, C), *dx = acts(x0, N, C), *out = acts(NULL, N, C);
        Floats *mean = floats(NULL, (size_t)N), *rstd = floats(NULL, (size_t)N);
        Floats *dw = floats(w0, (size_t)C), *db = floats(b0, (size_t)C);
        Norm p = norm_of(norm, act, out, mean, rstd, weight, weight, N, C);
        B->norm_forward(D, &p);
        p.dout = grad;
        p.dx = dx;
        p.dw = dw;
        p.db = db;
        const NormReference ref = norm_reference(x, norm, N, C);
        Sum sx = sums(n, x0), sw = sums((size_t)C, w0), sb = sums((size_t)C, b0);
        for (int twice = 0; twice < 2; twice++) {
            B->norm_backward(D, &p);
            for (int i = 0; i < N; i++) {
                double g_mean = 0, gn_mean = 0, g_size = 0;
                for (int c = 0; c < C; c++) {
                    const double g = (double)dout[i * C + c] * w[c];
                    g_mean += norm == NORM_RMS ? 0 : g / C;
                    gn_mean += g * ref.n[i * C + c] / C;
                    g_size += fabs(g) / C;
                    sum_add(sw, (size_t)c, dout[i * C + c] * ref.n[i * C + c]);
                    sw.size[c] += fabs(dout[i * C + c]) * ref.amplify[i];
                    if (norm == NORM_LAYER) sum_add(sb, (size_t)c, dout[i * C + c]); /* RMSNorm leaves db alone */
                }
                for (int c = 0; c < C; c++) {
                    const size_t at = (size_t)(i * C + c);
                    sum_add(sx, at, ref.rstd[i] * ((double)dout[at] * w[c] - g_mean - ref.n[at] * gn_mean));
                    sx.size[at] += ref.rstd[i] * g_size * (1 + fabs(ref.n[at])) * (2 + 2 * ref.amplify[i]);
                }
            }
            sum_check("dx", fetch(dx, n), sx, 2 * C, n);
            sum_check("dw", fetch(dw, (size_t)C), sw, 2 * N + C, (size_t)C);
            sum_check("db", fetch(db, (size_t)C), sb, 2 * N, (size_t)C);
        }
    }
}

static void test_layernorm_backward(void **state) {
    (void)state;
    norm_backward_of(NORM_LAYER);
}

static void test_rmsnorm_backward(void **state) {
    (void)state;
    norm_backward_of(NORM_RMS);
}

/* Gemma's RMSNorm multiplies by 1 + w; a norm after a branch is added to the residual stream, also in place; its
 * backward pass sets dx instead of adding to it. */
static void test_rmsnorm_variants(void **state) {
    (void)state;
    Random r = random_start(24, 0);
    for (int s = 0; s < NORM_SHAPES; s++) {
        const int N = norm_shape[s][0], C = norm_shape[s][1];
        const size_t n = (size_t)(N * C);
        const float *x = noise(&r, n, 2), *add = noise(&r, n, 1), *w = noise(&r, (size_t)C, 1);
        const float *dout = noise(&r, n, 1), *w0 = noise(&r, (size_t)C, 1);
        Acts *act = acts(x, N, C), *sum = acts(add, N, C), *out = acts(NULL, N, C), *dx = acts(dout, N, C);
        Floats *rstd = floats(NULL, (size_t)N), *dw = floats(w0, (size_t)C);
        Norm p = norm_of(NORM_RMS, act, out, NULL, rstd, weights(w, (size_t)C), NULL, N, C);
        p.plus_one = 1;
        p.add = sum;
        B->norm_forward(D, &p);
        const float *apart = fetch(out, n);
        const NormReference ref = norm_reference(x, NORM_RMS, N, C);
        double *want = DOUBLES(n), *size = DOUBLES(n);
        Sum sx = sums(n, NULL), sw = sums((size_t)C, w0);
        for (int i = 0; i < N * C; i++) {
            const double one = 1 + (double)w[i % C];
            want[i] = add[i] + ref.n[i] * one;
            size[i] = fabs(add[i]) + (ref.amplify[i / C] + 2 * fabs(ref.n[i])) * (1 + fabs(w[i % C]));
        }
        check("RMSNorm with 1 + w", apart, want, size, C + 8, n);
        p.out = sum;
        B->norm_forward(D, &p);
        assert_memory_equal(fetch(sum, n), apart, n * sizeof *apart);
        p.dout = acts(dout, N, C);
        p.dx = dx;
        p.dw = dw;
        p.fresh = 1;
        B->norm_backward(D, &p);
        for (int i = 0; i < N; i++) {
            double mean = 0, mean_size = 0;
            for (int c = 0; c < C; c++) {
                const double g = dout[i * C + c] * (1 + (double)w[c]);
                mean += g * ref.n[i * C + c] / C;
                mean_size += fabs(g) / C;
                sum_add(sw, (size_t)c, dout[i * C + c] * ref.n[i * C + c]);
                sw.size[c] += fabs(dout[i * C + c]) * ref.amplify[i];
            }
            for (int c = 0; c < C; c++) {
                const size_t at = (size_t)(i * C + c);
                sum_add(sx, at, ref.rstd[i] * (dout[at] * (1 + (double)w[c]) - ref.n[at] * mean));
                sx.size[at] += ref.rstd[i] * (mean_size * (1 + fabs(ref.n[at])) + fabs(dout[at]) * (1 + fabs(w[c]))) *
                               (2 + 2 * ref.amplify[i]);
            }
        }
        sum_check("fresh dx", fetch(dx, n), sx, 2 * C, n);
        sum_check("dw of 1 + w", fetch(dw, (size_t)C), sw, 2 * N + C, (size_t)C);
    }
}

/* ==== Rotary positions ==== */

/* The result of a row of Rotary in float64, for q and k of one row; y: (H + K) D. */
static void rotary_reference(const Rotary *p, const float *x, const float *qw, const float *kw, const float *table,
                             double *y) {
    const int DIM = p->head_size, Q = p->heads * DIM, K = p->kv_heads * DIM, half = p->rotated / 2;
    for (int i = 0; i < Q + K; i++) y[i] = x[i];
    for (int part = 0; part < 2 && qw; part++) {
        const int from = part ? Q : 0, end = part ? Q + K : Q, group = part ? p->k_group : p->q_group;
        for (int g = from; g < end; g += group) {
            double squares = 0;
            for (int c = 0; c < group; c++) squares += (double)x[g + c] * x[g + c];
            const double rstd = 1 / sqrt(squares / group + p->eps);
            for (int c = 0; c < group; c++) y[g + c] = x[g + c] * rstd * ((part ? kw : qw)[c] + p->plus_one);
        }
    }
    for (int h = 0; h < p->heads + p->kv_heads && table; h++)
        for (int j = 0; j < half; j++) {
            const double a = y[h * DIM + j], b = y[h * DIM + half + j], c = table[j], s = table[half + j];
            y[h * DIM + j] = a * c - b * s;
            y[h * DIM + half + j] = b * c + a * s;
        }
}

/* loss = sum of dout times the result, for finite differences in float64 */
static double rotary_loss(const Rotary *p, const float *x, const float *qw, const float *kw, const float *table,
                          const float *dout) {
    double y[256], loss = 0;
    rotary_reference(p, x, qw, kw, table, y);
    for (int i = 0; i < (p->heads + p->kv_heads) * p->head_size; i++) loss += y[i] * dout[i];
    return loss;
}

/* The derivative of loss(x) by *x, from differences that are exact in float32: (f(x + h) - f(x - h)) / 2h, Richardson's
 * extrapolation of two steps, in float64 except for x itself. */
#define DERIVATIVE(at, loss)                                                                                           \
    ({                                                                                                                 \
        const float x_ = *(at), h_ = 0.0078125f;                                                                       \
        double d_[2];                                                                                                  \
        for (int k_ = 0; k_ < 2; k_++) {                                                                               \
            const float up_ = x_ + h_ * (float)(1 + k_), down_ = x_ - h_ * (float)(1 + k_);                            \
            *(at) = up_;                                                                                               \
            const double above_ = (loss);                                                                              \
            *(at) = down_;                                                                                             \
            d_[k_] = (above_ - (loss)) / ((double)up_ - down_);                                                        \
        }                                                                                                              \
        *(at) = x_;                                                                                                    \
        (4 * d_[0] - d_[1]) / 3;                                                                                       \
    })

static void test_rotary(void **state) {
    (void)state;
    enum { N = 37, MARGIN = 5 };
    static const struct {
        int heads, kv_heads, head_size, rotated;
        bool row, normed, still;
    } shape[] = {{3, 1, 12, 12, false, false, false}, {4, 2, 8, 6, false, true, false},
                 {6, 3, 10, 10, true, true, false},   {2, 2, 16, 16, false, true, true},
                 {1, 1, 2, 2, false, true, false},    {5, 5, 20, 8, true, true, true}};
    for (int s = 0; s < 6; s++) {
        Random r = random_start(25, (uint64_t)s);
        const int DIM = shape[s].head_size, H = shape[s].heads, K = shape[s].kv_heads, R = shape[s].rotated;
        const int width = (H + K) * DIM, stride = width + MARGIN, half = R / 2, table_stride = R + 4;
        const int groups = shape[s].row ? 2 : H + K;
        Rotary p = {.rows = N, .heads = H, .kv_heads = K, .head_size = DIM, .rotated = R, .stride = stride};
        p.table_stride = table_stride;
        p.q_group = shape[s].row ? H * DIM : DIM;
        p.k_group = shape[s].row ? K * DIM : DIM;
        p.plus_one = s % 2;
        p.eps = 0.25f; /* keeps the third derivative small, for the differences */
        p.before_stride = width;
        float *x = noise(&r, (size_t)(N * stride), 1), *dout = noise(&r, (size_t)(N * stride), 1);
        float *qw = noise(&r, (size_t)p.q_group, 1), *kw = noise(&r, (size_t)p.k_group, 1);
        float *frequency = FLOATS((size_t)half);
        for (int j = 0; j < half; j++) frequency[j] = powf(100, -2.0f * (float)j / (float)R);
        const int32_t *position = picks(&r, N, 5000);
        Floats *table = floats(NULL, (size_t)(N * table_stride));
        B->rotary_table(D, table, ints(position, N), floats(frequency, (size_t)half), 1.25f, N, half, table_stride);
        float *angles = fetch(table, (size_t)(N * table_stride));
        for (int i = 0; i < N; i++)
            for (int j = 0; j < half; j++) { /* the angle is a product in float32 */
                const float angle = (float)position[i] * frequency[j];
                assert_true(fabs(angles[i * table_stride + j] - 1.25 * cos(angle)) < 4 * U);
                assert_true(fabs(angles[i * table_stride + half + j] - 1.25 * sin(angle)) < 4 * U);
            }
        Acts *qk = acts(x, N, stride), *grad = acts(dout, N, stride);
        Floats *dqw = floats(qw, (size_t)p.q_group), *dkw = floats(kw, (size_t)p.k_group);
        p.table = shape[s].still ? NULL : table;
        p.qk = qk;
        if (shape[s].normed) {
            p.qw = weights(qw, (size_t)p.q_group);
            p.kw = weights(kw, (size_t)p.k_group);
            p.before = acts(NULL, N, width);
            p.rstd = floats(NULL, (size_t)(N * groups));
            p.dqw = dqw;
            p.dkw = dkw;
        }
        B->rotary_forward(D, &p);
        const float *got = fetch(qk, (size_t)(N * stride));
        p.qk = grad;
        B->rotary_backward(D, &p);
        const float *got_grad = fetch(grad, (size_t)(N * stride));
        Sum sq = sums((size_t)p.q_group, qw), sk = sums((size_t)p.k_group, kw);
        for (int i = 0; i < N; i++) {
            float *row = x + i * stride, *d = dout + i * stride, *angle = p.table ? angles + i * table_stride : NULL;
            float *w[2] = {p.qw ? qw : NULL, kw};
            double y[256];
            rotary_reference(&p, row, w[0], w[1], angle, y);
            for (int c = 0; c < width; c++) { /* rows have unit size, weights up to 4, factors 1.25 */
                assert_true(fabs(got[i * stride + c] - y[c]) < 40 * U * 8);
                const double slope = DERIVATIVE(&row[c], rotary_loss(&p, row, w[0], w[1], angle, d));
                if (!(fabs(got_grad[i * stride + c] - slope) < 2e-5 * (1 + fabs(slope))))
                    fail_msg("shape %d, d[%d, %d] is %g, expected %g", s, i, c, got_grad[i * stride + c], slope);
            }
            for (int c = width; c < stride; c++) { /* the values after the keys do not change */
                assert_true(got[i * stride + c] == row[c]);
                assert_true(got_grad[i * stride + c] == d[c]);
            }
            for (int c = 0; c < p.q_group && p.qw; c++)
                sum_add(sq, (size_t)c, DERIVATIVE(&qw[c], rotary_loss(&p, row, qw, kw, angle, d)));
            for (int c = 0; c < p.k_group && p.qw; c++)
                sum_add(sk, (size_t)c, DERIVATIVE(&kw[c], rotary_loss(&p, row, qw, kw, angle, d)));
        }
        if (!p.qw) continue;
        sum_check("gradient of the queries' norm", fetch(dqw, (size_t)p.q_group), sq, 400, (size_t)p.q_group);
        sum_check("gradient of the keys' norm", fetch(dkw, (size_t)p.k_group), sk, 400, (size_t)p.k_group);
    }
}

/* ==== Linear ==== */

static const int linear_shape[][3] = {/* N, IC, OC */ {1, 24, 72},
                                      {5, 24, 17},
                                      {16, 32, 32},
                                      {33, 64, 100},
                                      {17, 1, 1},
                                      {4, 300, 150},
                                      {7, 33, 65},
                                      {12, 70, 40},
                                      {128, 410, 33},
                                      {1, 1, 257},
                                      {31, 257, 3},
                                      {130, 48, 192},
                                      {2, 100, 1},
                                      {37, 2100, 3},
                                      {290, 3, 1100},
                                      {1100, 5, 41}};
enum { LINEAR_SHAPES = sizeof linear_shape / sizeof *linear_shape };

/* gelu(x) = x/2 (1 + tanh u), with (1 + tanh u) / 2 = 1 / (1 + e^-2u), which has no cancellation */
static double gelu_u(double x) { return sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); }
static double gelu(double x) { return x / (1 + exp(-2 * gelu_u(x))); }
static double gelu_slope(double x) {
    const double s = 1 / (1 + exp(-2 * gelu_u(x))), t = 1 / (1 + exp(2 * gelu_u(x)));
    return s + 2 * x * s * t * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}
/* The relative error of e^y is the relative error of y times |y|. */
static double gelu_size(double x) { return fabs(gelu(x)) * (1 + 2 * fabs(gelu_u(x))); }

static void check_linear(Device *d, double (*round)(double)) {
    Random r = random_start(7, 0);
    for (int s = 0; s < LINEAR_SHAPES; s++) {
        const int N = linear_shape[s][0], IC = linear_shape[s][1], OC = linear_shape[s][2];
        const size_t in = (size_t)(N * IC), out = (size_t)(N * OC), size = (size_t)(IC * OC);
        const float *x = noise(&r, in, 1), *w = noise(&r, size, 1), *b = noise(&r, (size_t)OC, 1);
        const float *dout = noise(&r, out, 1), *w0 = noise(&r, size, 1), *b0 = noise(&r, (size_t)OC, 1);
        Weights *dev_w = device_words(w, size, size, false), *dev_b = weights(b, (size_t)OC);
        Acts *dev_x = acts(x, N, IC), *y = acts(NULL, N, OC), *g = acts(NULL, N, OC), *dx = acts(NULL, N, IC);
        Acts *dev_dout = acts(dout, N, OC);
        B->linear_forward(d, y, dev_x, dev_w, NULL, N, IC, OC);
        sum_check("linear", fetch(y, out), linear_reference(x, w, NULL, N, IC, OC, round), IC, out);
        B->linear_forward(d, y, dev_x, dev_w, dev_b, N, IC, OC);
        const Sum ref = linear_reference(x, w, b, N, IC, OC, round);
        sum_check("linear + bias", fetch(y, out), ref, IC, out);
        y = acts(NULL, N, OC);
        B->linear_gelu_forward(d, y, g, dev_x, dev_w, dev_b, N, IC, OC);
        const float *pre = fetch(y, out);
        sum_check("linear + gelu, before it", pre, ref, IC, out);
        double *want = DOUBLES(out), *want_size = DOUBLES(out);
        for (size_t i = 0; i < out; i++) {
            want[i] = gelu(pre[i]);
            want_size[i] = gelu_size(pre[i]);
        }
        check("linear + gelu", fetch(g, out), want, want_size, 8, out);
        Floats *dw = floats(w0, size), *db = floats(b0, (size_t)OC);
        Sum sx = sums(in, NULL), sw = sums(size, w0), sb = sums((size_t)OC, b0);
        for (int i = 0; i < N; i++)
            for (int o = 0; o < OC; o++)
                for (int k = 0; k < IC; k++)
                    sum_add(sx, (size_t)(i * IC + k), round(dout[i * OC + o]) * round(w[o * IC + k]));
        for (int pass = 0; pass < 3; pass++) { /* first, repeated, and without the optional results */
            B->linear_backward(d, pass < 2 ? dx : NULL, dw, pass < 2 ? db : NULL, dev_dout, dev_x, dev_w, N, IC, OC);
            for (int i = 0; i < N; i++)
                for (int o = 0; o < OC; o++) {
                    for (int k = 0; k < IC; k++)
                        sum_add(sw, (size_t)(o * IC + k), round(dout[i * OC + o]) * round(x[i * IC + k]));
                    if (pass < 2) sum_add(sb, (size_t)o, dout[i * OC + o]);
                }
            sum_check("dx", fetch(dx, in), sx, OC, in);
            sum_check("dw", fetch(dw, size), sw, 3 * N, size);
            sum_check("db", fetch(db, (size_t)OC), sb, 2 * N, (size_t)OC);
        }
        Sum stored = sums(size, NULL); /* of one pass, then of two */
        B->store_next(d, dw);
        for (int pass = 0; pass < 2; pass++) {
            B->linear_backward(d, NULL, dw, NULL, dev_dout, dev_x, dev_w, N, IC, OC);
            for (int i = 0; i < N; i++)
                for (int o = 0; o < OC; o++)
                    for (int k = 0; k < IC; k++)
                        sum_add(stored, (size_t)(o * IC + k), round(dout[i * OC + o]) * round(x[i * IC + k]));
            sum_check("dw, stored", fetch(dw, size), stored, 2 * N, size);
        }
        B->weights_upload(d, dev_w, w0, size); /* the packed copies must be updated, for forward and backward */
        B->linear_forward(d, y, dev_x, dev_w, dev_b, N, IC, OC);
        sum_check("new weights", fetch(y, out), linear_reference(x, w0, b, N, IC, OC, round), IC, out);
        B->linear_backward(d, dx, dw, NULL, dev_dout, dev_x, dev_w, N, IC, OC);
        Sum new_dx = sums(in, NULL);
        for (int i = 0; i < N; i++)
            for (int o = 0; o < OC; o++)
                for (int k = 0; k < IC; k++)
                    sum_add(new_dx, (size_t)(i * IC + k), round(dout[i * OC + o]) * round(w0[o * IC + k]));
        sum_check("dx, new weights", fetch(dx, in), new_dx, OC, in);
    }
}

static void test_linear(void **state) {
    (void)state;
    Device *d; /* a device of its own, because check_linear() leaves packed weights */
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    check_linear(d, same);
    assert_true(B->sync(d, &e));
    B->close(d);
}

static void test_linear_bf16(void **state) {
    (void)state;
    Device *d;
    Error e;
    if (!B->open(&d, DTYPE_BF16, &e)) {
        print_message("             skipped: %s\n", e.text);
        assert_non_null(strstr(e.text, "bf16"));
        skip();
    }
    check_linear(d, bf16);
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* In bfloat16 a row has the same bits alone and in a batch of any size, with any number of threads, and so have the
 * gradients with any number of threads. */
static void test_linear_bf16_bits(void **state) {
    (void)state;
    Device *d;
    Error e;
    enum { N = 301, IC = 1100, OC = 71, SIZE = IC * OC };
    if (!B->open(&d, DTYPE_BF16, &e)) skip();
    Random r = random_start(17, 0);
    const float *x = noise(&r, N * IC, 1), *w = noise(&r, SIZE, 1), *b = noise(&r, OC, 1), *dout = noise(&r, N * OC, 1);
    Weights *dev_w = weights(w, SIZE), *dev_b = weights(b, OC);
    Acts *dev_x = acts(x, N, IC), *dev_dout = acts(dout, N, OC);
    const int threads = omp_get_max_threads();
    const float *want_y = NULL, *want_dx = NULL, *want_dw = NULL;
    for (int t = 1; t <= 3; t++) {
        omp_set_num_threads(t);
        Acts *y = acts(NULL, N, OC), *dx = acts(NULL, N, IC);
        Floats *dw = floats(w, SIZE);
        B->linear_forward(d, y, dev_x, dev_w, dev_b, N, IC, OC);
        B->linear_backward(d, dx, dw, NULL, dev_dout, dev_x, dev_w, N, IC, OC);
        const float *got_y = fetch(y, N * OC), *got_dx = fetch(dx, N * IC), *got_dw = fetch(dw, SIZE);
        if (want_y) {
            assert_memory_equal(got_y, want_y, N * OC * sizeof(float));
            assert_memory_equal(got_dx, want_dx, N * IC * sizeof(float));
            assert_memory_equal(got_dw, want_dw, SIZE * sizeof(float));
        }
        want_y = got_y;
        want_dx = got_dx;
        want_dw = got_dw;
    }
    omp_set_num_threads(threads);
    for (int n = 1, i = 0; n <= 13; i += n++) { /* with different code by the number of rows */
        Acts *few = acts(NULL, n, OC);
        B->linear_forward(d, few, acts(x + i * IC, n, IC), dev_w, dev_b, n, IC, OC);
        assert_memory_equal(fetch(few, n * OC), want_y + i * OC, (size_t)(n * OC) * sizeof(float));
    }
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* In float32 a row of few has the same bits alone and in a batch of any size, with any number of threads. */
static void test_linear_few_bits(void **state) {
    (void)state;
    enum { N = GEMM_KEPT_ROWS, IC = 700, OC = 171 };
    Random r = random_start(18, 0);
    const float *x = noise(&r, N * IC, 1);
    Weights *dev_w = weights(noise(&r, IC * OC, 1), IC * OC), *dev_b = weights(noise(&r, OC, 1), OC);
    Device *d;
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    Acts *y = acts(NULL, N, OC);
    B->linear_forward(d, y, acts(x, N, IC), dev_w, dev_b, N, IC, OC);
    const float *want = fetch(y, N * OC);
    const int threads = omp_get_max_threads();
    for (int n = 1; n <= N; n += n < 14 ? 1 : 19) {
        omp_set_num_threads(n % 3 + 1);
        for (int first = 0; first + n <= N; first += 37) {
            Acts *some = acts(NULL, n, OC);
            B->linear_forward(d, some, acts(x + first * IC, n, IC), dev_w, dev_b, n, IC, OC);
            assert_memory_equal(fetch(some, (size_t)(n * OC)), want + first * OC, (size_t)(n * OC) * sizeof(float));
        }
    }
    omp_set_num_threads(threads);
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* Adapters of several parts of a row with margins, forward and backward. */
static void test_lora(void **state) {
    (void)state;
    static const struct {
        int rows, in, rank, parts, count[3], margin;
    } shape[] = {{1, 24, 3, 1, {40}, 0},
                 {2, 7, 1, 3, {5, 2, 3}, 2},
                 {5, 33, 16, 2, {24, 24}, 0},
                 {19, 40, 8, 3, {40, 8, 8}, 5},
                 {70, 16, 5, 1, {9}, 3}};
    for (int s = 0; s < 5; s++) {
        Random r = random_start(27, (uint64_t)s);
        const int N = shape[s].rows, K = shape[s].in, rank = shape[s].rank, P = shape[s].parts, all = P * rank;
        Lora l = {.rows = N, .in = K, .rank = rank, .parts = P, .scale = 0.75f, .stride = shape[s].margin};
        int outs = 0;
        for (int p = 0; p < P; p++) {
            l.first[p] = outs + shape[s].margin; /* the margin before the first part belongs to none */
            l.count[p] = shape[s].count[p];
            outs += shape[s].count[p];
        }
        l.stride += outs;
        const int S = l.stride;
        float *x = noise(&r, (size_t)(N * K), 1), *a = noise(&r, (size_t)(all * K), 1);
        float *b = noise(&r, (size_t)(outs * rank), 1), *out = noise(&r, (size_t)(N * S), 1);
        float *dout = noise(&r, (size_t)(N * S), 1), *dx = noise(&r, (size_t)(N * K), 1);
        float *da = noise(&r, (size_t)(all * K), 1), *db = noise(&r, (size_t)(outs * rank), 1);
        Sum h = sums((size_t)(N * all), NULL), want = sums((size_t)(N * S), out), dh = sums((size_t)(N * all), NULL);
        Sum want_dx = sums((size_t)(N * K), dx), want_da = sums((size_t)(all * K), da);
        Sum want_db = sums((size_t)(outs * rank), db);
        for (int i = 0; i < N; i++)
            for (int k = 0; k < all; k++)
                for (int c = 0; c < K; c++) sum_add(h, (size_t)(i * all + k), (double)x[i * K + c] * a[k * K + c]);
        for (int p = 0, row = 0; p < P; row += l.count[p++])
            for (int c = 0; c < l.count[p]; c++)
                for (int k = 0; k < rank; k++)
                    for (int i = 0; i < N; i++) {
                        const size_t at = (size_t)(i * S + l.first[p] + c), inner = (size_t)(i * all + p * rank + k);
                        const size_t of_b = (size_t)((row + c) * rank + k);
                        sum_add(want, at, 0.75 * h.value[inner] * b[of_b]);
                        sum_add(dh, inner, 0.75 * dout[at] * b[of_b]);
                        sum_add(want_db, of_b, 0.75 * dout[at] * h.value[inner]);
                        want.size[at] += 0.75 * h.size[inner] * fabs((double)b[of_b]); /* rounding errors of h */
                        want_db.size[of_b] += 0.75 * fabs((double)dout[at]) * h.size[inner];
                    }
        for (int i = 0; i < N; i++)
            for (int k = 0; k < all; k++)
                for (int c = 0; c < K; c++) {
                    const double d = dh.value[i * all + k], size = dh.size[i * all + k];
                    sum_add(want_dx, (size_t)(i * K + c), d * a[k * K + c]);
                    sum_add(want_da, (size_t)(k * K + c), d * x[i * K + c]);
                    want_dx.size[i * K + c] += size * fabs((double)a[k * K + c]);
                    want_da.size[k * K + c] += size * fabs((double)x[i * K + c]);
                }
        l.x = acts(x, N, K);
        l.a = weights(a, (size_t)(all * K));
        l.b = weights(b, (size_t)(outs * rank));
        l.h = acts(NULL, N, all);
        l.out = acts(out, N, S);
        B->lora_forward(D, &l);
        l.dout = acts(dout, N, S);
        l.dx = acts(dx, N, K);
        l.da = floats(da, (size_t)(all * K));
        l.db = floats(db, (size_t)(outs * rank));
        B->lora_backward(D, &l);
        const int terms = K + N + outs + all;
        sum_check("h", fetch(l.h, (size_t)(N * all)), h, terms, (size_t)(N * all));
        sum_check("out", fetch(l.out, (size_t)(N * S)), want, terms, (size_t)(N * S));
        sum_check("dx", fetch(l.dx, (size_t)(N * K)), want_dx, terms, (size_t)(N * K));
        sum_check("da", fetch(l.da, (size_t)(all * K)), want_da, terms, (size_t)(all * K));
        sum_check("db", fetch(l.db, (size_t)(outs * rank)), want_db, terms, (size_t)(outs * rank));
    }
}

/* A product with a matrix of `parts` types from `first` on, and its gradient. */
static void quantized_check(Random *r, int first, int parts, int N, int K) {
    QuantMatrix q = {.parts = parts};
    int M = 0;
    for (int p = 0; p < parts; p++) M += q.rows[p] = 5 + 32 * p;
    float *w = FLOATS(M * K), *at = w;
    void *blocks[QUANT_PARTS] = {NULL};
    for (int p = 0; p < parts; p++) {
        const size_t n = (size_t)(q.rows[p] * K);
        q.type[p] = (first + p) % QUANT_COUNT;
        blocks[p] = quant_random(r, (QuantType)q.type[p], n, at);
        q.blocks[p] = (const Blocks *)blocks[p];
        at += n;
    }
    const float *x = noise(r, (size_t)(N * K), 1), *b = noise(r, (size_t)M, 1);
    const float *dout = noise(r, (size_t)(N * M), 1);
    Sum out = sums((size_t)(N * M), NULL), dx = sums((size_t)(N * K), NULL);
    sum_linear(out, dx, x, w, b, dout, N, K, M);
    Acts *got = acts(NULL, N, M), *gradient = acts(NULL, N, K);
    B->quant_forward(D, got, acts(x, N, K), &q, weights(b, (size_t)M), N, K, M);
    B->quant_backward(D, gradient, acts(dout, N, M), &q, N, K, M);
    sum_check("out", fetch(got, (size_t)(N * M)), out, K + 1, (size_t)(N * M));
    sum_check("dx", fetch(gradient, (size_t)(N * K)), dx, M, (size_t)(N * K));
    for (int p = 0; p < parts; p++) free(blocks[p]);
}

/* Products with matrices in blocks of every type, and of three types at once, and their gradient. Few rows are other code
 * than many, a few of those other code than more, and sizes need not be multiples of anything but a block: 70 elements of
 * a type without blocks, which has other code for multiples of 32. The gradient of rows of 64 elements has blocks of several matrices' columns. */
static void test_quantized(void **state) {
    static const int rows_of[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 17, 31, 32, 33, 70, 300};
    Random r = random_start(37, 0);
    for (size_t i = 0; i < sizeof rows_of / sizeof *rows_of; i++) {
        for (int first = 0; first < QUANT_COUNT; first++) {
            const int block = (int)quant_info((QuantType)first)->values;
            quantized_check(&r, first, 1, rows_of[i], block == 1 ? 70 : block == QUANT_BLOCK ? 96 : 512);
            if (block == 1) quantized_check(&r, first, 1, rows_of[i], 96);
            if (first == (int)i % QUANT_COUNT) quantized_check(&r, first, QUANT_PARTS, rows_of[i], 768);
        }
        assert_int_equal(check_memory(state), 0); /* also frees it */
    }
}

static void test_frozen(void **state) {
    (void)state;
    frozen_check(B, D);
}

/* DoRA of parts of rows with margins: lengths, scaled outputs and the gradients of both, with float and quantised weights. */
static void test_dora(void **state) {
    (void)state;
    enum { N = 37, K = 64, RANK = 3, PARTS = 2, OUTS = 5 + 33, STRIDE = 2 + 5 + 4 + 33 };
    Random r = random_start(41, 0);
    for (int quantised = 0; quantised < 2; quantised++) {
        float *w = noise(&r, STRIDE * K, 1);
        void *blocks = quantised ? quant_random(&r, QUANT_Q8_0, STRIDE * K, w) : NULL;
        const float *a = noise(&r, PARTS * RANK * K, 1), *b = noise(&r, OUTS * RANK, 1), *bias = noise(&r, STRIDE, 1);
        const float *magnitude = noise(&r, OUTS, 2), *out = noise(&r, N * STRIDE, 1), *dout = noise(&r, N * STRIDE, 1);
        const float *before = noise(&r, OUTS, 1);
        Dora l = {.rows = N,
                  .in = K,
                  .rank = RANK,
                  .parts = PARTS,
                  .stride = STRIDE,
                  .first = {2, 11},
                  .count = {5, 33},
                  .scale = 0.75f};
        l.w = weights(w, STRIDE * K);
        if (quantised)
            l.matrix = (QuantMatrix){.parts = 1, .type = {QUANT_Q8_0}, .rows = {STRIDE}, .blocks = {(Blocks *)blocks}};
        l.a = weights(a, PARTS * RANK * K);
        l.b = weights(b, OUTS * RANK);
        l.magnitude = weights(magnitude, OUTS);
        l.bias = weights(bias, STRIDE);
        l.norm = floats(NULL, OUTS);
        l.u = acts(NULL, N, OUTS);
        l.out = acts(out, N, STRIDE);
        l.dout = acts(dout, N, STRIDE);
        l.dscaled = acts(NULL, N, STRIDE);
        l.dmagnitude = floats(before, OUTS);
        B->dora_norm(D, &l);
        B->dora_forward(D, &l);
        B->dora_backward(D, &l);
        const float *norm = fetch(l.norm, OUTS), *got = fetch(l.out, N * STRIDE),
                    *scaled = fetch(l.dscaled, N * STRIDE);
        Sum sum = sums(OUTS, before);
        for (int c = 0, i = 0; c < STRIDE; c++) {
            const int part = c >= 11;
            double square = 0, factor = 1;
            const bool adapted = (c >= 2 && c < 7) || c >= 11;
            for (int j = 0; j < K && adapted; j++) {
                double x = w[c * K + j];
                for (int k = 0; k < RANK; k++) x += 0.75 * b[i * RANK + k] * a[(part * RANK + k) * K + j];
                square += x * x;
            }
            if (adapted) {
                factor = magnitude[i] / sqrt(square);
                assert_true(fabs(norm[i] - sqrt(square)) <= 1e-6 * sqrt(square));
            }
            for (int n = 0; n < N; n++) {
                const double y = out[n * STRIDE + c], plain = y - bias[c];
                const double size = fabs(plain) * (1 + fabs(factor)) + fabs(y);
                assert_true(fabs(got[n * STRIDE + c] - (y + (factor - 1) * plain)) <= 1e-6 * size);
                assert_true(fabs(scaled[n * STRIDE + c] - factor * dout[n * STRIDE + c]) <=
                            1e-6 * fabs(factor * dout[n * STRIDE + c]));
                if (adapted) sum_add(sum, (size_t)i, dout[n * STRIDE + c] * plain / sqrt(square));
            }
            i += adapted;
        }
        sum_check("dmagnitude", fetch(l.dmagnitude, OUTS), sum, N + 20, OUTS);
        free(blocks);
    }
}

/* bfloat16 operands: rounding to nearest even, NaN, infinity, subnormal numbers. */
static void test_bf16_operands(void **state) {
    (void)state;
    Device *d;
    Error e;
    if (!B->open(&d, DTYPE_BF16, &e)) skip();
    enum { N = 8 };
    const float x[N] = {1 + 0x1p-8f, 1 + 0x1.8p-7f, 1 + 0x1.1p-8f, -1 - 0x1p-8f, 0x1.ffp127f, NAN, -INFINITY, 3e-45f};
    const double want[N] = {1, 1 + 0x1p-6, 1 + 0x1p-7, -1, INFINITY, NAN, -INFINITY, 0};
    const float one = 1;
    Weights *w = device_words(&one, 1, 1, false);
    Acts *out = acts(NULL, N, 1);
    B->linear_forward(d, out, acts(x, N, 1), w, NULL, N, 1, 1);
    const float *got = fetch(out, N);
    for (int i = 0; i < N; i++) assert_true(isnan(want[i]) ? isnan(got[i]) : got[i] == want[i]);
    B->close(d);
}

static void test_gelu(void **state) {
    (void)state;
    enum { N = 40003 };
    Random r = random_start(8, 0);
    float *x = FLOATS(N);
    for (int i = 0; i < N; i++) x[i] = (float)((i - N / 2) * (12.0 / (N / 2)));
    static const float special[] = {0,    -0.0f, 1e-30f, -1e-30f, 1e-42f, 100,   -100,
                                    1e6f, -1e6f, 1e15f,  -1e15f,  1e20f,  -1e20f};
    memcpy(x, special, sizeof special);
    const float *grad = noise(&r, N, 1);
    Acts *pre = acts(x, N, 1), *out = acts(NULL, N, 1), *d = acts(grad, N, 1);
    B->gelu_forward(D, out, pre, N);
    B->gelu_backward(D, d, pre, N);
    double *y = DOUBLES(N), *slope = DOUBLES(N), *size = DOUBLES(N), *slope_size = DOUBLES(N);
    for (int i = 0; i < N; i++) {
        const bool far = fabs(x[i]) > 30; /* the result is exactly x or 0 */
        y[i] = far ? fmax(x[i], 0) : gelu(x[i]);
        slope[i] = grad[i] * (far ? x[i] > 0 : gelu_slope(x[i]));
        size[i] = far ? fabs(y[i]) : gelu_size(x[i]);
        slope_size[i] = fabs(grad[i]) * (1 + fmin(fabs(x[i]), 8) * (1 + fmin(fabs(gelu_u(x[i])), 10)));
    }
    check("gelu", fetch(out, N), y, size, 8, N);
    check("gelu'", fetch(d, N), slope, slope_size, 8, N);
    const float nan = NAN;
    Acts *one = acts(&nan, 1, 1);
    B->gelu_forward(D, out, one, 1);
    assert_true(isnan(fetch(out, 1)[0]));
}

/* silu(g) = g sigmoid(g) and its slope, or gelu's */
static double gate(MlpKind kind, double g) { return kind == MLP_GEGLU ? gelu(g) : g / (1 + exp(-g)); }
static double gate_slope_of(MlpKind kind, double g) {
    const double s = 1 / (1 + exp(-g)), t = 1 / (1 + exp(g));
    return kind == MLP_GEGLU ? gelu_slope(g) : s + g * s * t;
}

/* The exponential of the kernels has a relative error of a few units, times its argument: |g|, or 2 |u(g)| for gelu. */
static void test_gate(void **state) {
    (void)state;
    enum { N = 19, F = 37 };
    Random r = random_start(14, 0);
    for (MlpKind kind = MLP_SWIGLU; kind <= MLP_GEGLU; kind++) {
        const float *x = noise(&r, 2 * N * F, 3), *dout = noise(&r, N * F, 1);
        double *want = DOUBLES(N * F), *size = DOUBLES(N * F), *slope = DOUBLES(2 * N * F);
        double *slope_size = DOUBLES(2 * N * F);
        Acts *pre = acts(x, N, 2 * F), *out = acts(NULL, N, F), *grad = acts(dout, N, F), *dpre = acts(NULL, N, 2 * F);
        B->gate_forward(D, out, pre, kind, N, F);
        B->gate_backward(D, dpre, grad, pre, kind, N, F);
        for (int i = 0; i < N; i++)
            for (int c = 0; c < F; c++) {
                const double g = x[2 * i * F + c], u = x[2 * i * F + F + c], o = dout[i * F + c];
                const double steep = 1 + 2 * fmax(fabs(g), fabs(gelu_u(g)));
                want[i * F + c] = gate(kind, g) * u;
                size[i * F + c] = fabs(want[i * F + c]) * steep;
                slope[2 * i * F + c] = o * u * gate_slope_of(kind, g);
                slope_size[2 * i * F + c] = fabs(o * u) * (1 + fabs(g) * steep);
                slope[2 * i * F + F + c] = o * gate(kind, g);
                slope_size[2 * i * F + F + c] = fabs(o * gate(kind, g)) * steep;
            }
        check("gate", fetch(out, N * F), want, size, 8, N * F);
        check("gate'", fetch(dpre, 2 * N * F), slope, slope_size, 8, 2 * N * F);
    }
}

/* The weights under packed copies are changed in every way that the table offers, also in only a part of a tensor. */
static void test_stale_weights(void **state) {
    (void)state;
    Random r = random_start(9, 0);
    enum { N = 20, C = 16, M = 40 };
    for (int dtype = 0; dtype < 2; dtype++) {
        Device *d;
        Error e;
        if (!B->open(&d, (Dtype)dtype, &e)) continue;
        double (*round)(double) = dtype ? bf16 : same;
        float *w = noise(&r, C * M, 1);
        const float *x = noise(&r, N * C, 1);
        Weights *dev = B->alloc(d, C * M * 4, "weights", &e);
        B->weights_upload(d, dev, w, C * M);
        Acts *dev_x = acts(x, N, C), *y = acts(NULL, N, M);
        for (int change = 0; change < 6; change++) {
            if (change == 1) { /* only the last rows, as when a file is read in pieces */
                for (int i = C * M / 2; i < C * M; i++) w[i] += 1;
                B->weights_upload(d, weights_at(B, dev, C * M / 2), w + C * M / 2, C * M / 2);
            } else if (change == 2) { /* the first rows */
                for (int i = 0; i < 5; i++) w[i] -= 1;
                B->weights_upload(d, dev, w, 5);
            } else if (change == 3 || change == 4) {
                const size_t from = change == 4 ? C : 0, n = C * M - from;
                float *grad = noise(&r, n, 1);
                const AdamW a = {.n = n,
                                 .lr = 0.5f,
                                 .beta1 = 0.9f,
                                 .beta2 = 0.99f,
                                 .eps = 1e-8f,
                                 .grad_scale = 1,
                                 .step = 1,
                                 .weights = weights_at(B, dev, from),
                                 .grad = floats(grad, n),
                                 .m = floats(FLOATS(n), n),
                                 .v = floats(FLOATS(n), n)};
                B->adamw(d, &a);
                B->weights_download(d, w, dev, C * M);
            } else if (change == 5) { /* different weights at the same address */
                B->weights_release(d, dev, C * M);
                dev = B->alloc(d, C * M * 4, "weights", &e);
                w = noise(&r, C * M, 1);
                B->weights_upload(d, dev, w, C * M);
            }
            B->linear_forward(d, y, dev_x, dev, NULL, N, C, M);
            sum_check("after the change", fetch(y, N * M), linear_reference(x, w, NULL, N, C, M, round), C, N * M);
        }
        B->weights_release(d, dev, C * M);
        B->close(d);
    }
}

/* With more shapes than the device keeps plans for, it discards all plans and continues. */
static void test_many_shapes(void **state) {
    (void)state;
    Random r = random_start(10, 0);
    enum { SIDE = 12, ROWS = GEMM_KEPT_ROWS + ROW_ALIGN }; /* products of fewer rows need no plan */
    const float *w = noise(&r, SIDE * SIDE, 1), *x = noise(&r, SIDE * ROWS, 1);
    Device *d;
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    Acts *dev_x = device_words(x, SIDE * ROWS, SIDE * ROWS, false), *y = acts(NULL, ROWS, SIDE);
    Weights *dev_w = device_words(w, SIDE * SIDE, SIDE * SIDE, false);
    for (int IC = 1; IC <= SIDE; IC++)
        for (int OC = 1; OC <= SIDE; OC += 3) {
            /* pretends that the table is full: making that many plans would take seconds */
            if (IC == SIDE / 2) d->plan_count = GEMM_PLANS;
            B->linear_forward(d, y, dev_x, dev_w, NULL, ROWS, IC, OC);
            assert_true(d->plan_count < SIDE * SIDE);
            sum_check("many shapes", fetch(y, (size_t)(ROWS * OC)), linear_reference(x, w, NULL, ROWS, IC, OC, same),
                      IC, (size_t)(ROWS * OC));
        }
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* ==== Attention ==== */

/* A prompt with two answers and a single segment, grouped heads, rows in no segment. test_attention.c has more
 * cases. */
static void test_attention(void **state) {
    (void)state;
    Random r = random_start(11, 0);
    enum { N = 23, H = 4, KV = 2, S = 6, STRIDE = (H + 2 * KV) * S, WIDTH = H * S };
    static const Segment segment[] = {
        {0, 7, 0, 0, 0, 0}, {7, 4, 0, 7, 7, 0}, {11, 1, 0, 7, 11, 0}, {14, 9, 0, 0, 14, 0}};
    const float *qkv = noise(&r, N * STRIDE, 1), *dout = noise(&r, N * WIDTH, 1);
    Acts *dev = acts(qkv, N, STRIDE), *out = acts(NULL, N, WIDTH), *grad = acts(NULL, N, STRIDE);
    const float scale = 1 / sqrtf(S);
    Attention a = {.rows = N,
                   .segments = 4,
                   .heads = H,
                   .kv_heads = KV,
                   .head_size = S,
                   .q_stride = STRIDE,
                   .kv_stride = STRIDE,
                   .scale = scale,
                   .segment = ints((const int32_t *)segment, 24),
                   .q = dev,
                   .k = acts_at(B, dev, H * S),
                   .v = acts_at(B, dev, (H + KV) * S),
                   .out = out,
                   .lse = floats(NULL, N * H),
                   .dout = acts(dout, N, WIDTH),
                   .dq = grad,
                   .dk = acts_at(B, grad, H * S),
                   .dv = acts_at(B, grad, (H + KV) * S)};
    B->attention_forward(D, &a);
    B->attention_backward(D, &a);
    double *want = DOUBLES(N * WIDTH), *lse = DOUBLES(N * H), *dqkv = DOUBLES(N * STRIDE);
    for (int s = 0; s < 4; s++)
        for (int i = 0; i < segment[s].len; i++)
            for (int h = 0; h < H; h++) {
                const int row = segment[s].start + i, kv = h * KV / H, n = segment[s].prefix_len + i + 1;
                double p[N], dp[N], total = 0, mean = 0;
                int key[N];
                for (int j = 0; j < n; j++) {
                    key[j] = j < segment[s].prefix_len ? segment[s].prefix_start + j
                                                       : segment[s].start + j - segment[s].prefix_len;
                    p[j] = 0;
                    for (int c = 0; c < S; c++)
                        p[j] += (double)qkv[row * STRIDE + h * S + c] * qkv[key[j] * STRIDE + (H + kv) * S + c] * scale;
                    total += exp(p[j]);
                }
                lse[row * H + h] = log(total);
                for (int j = 0; j < n; j++) {
                    p[j] = exp(p[j]) / total;
                    dp[j] = 0;
                    for (int c = 0; c < S; c++) {
                        const double v = qkv[key[j] * STRIDE + (H + KV + kv) * S + c],
                                     g = dout[row * WIDTH + h * S + c];
                        want[row * WIDTH + h * S + c] += p[j] * v;
                        dp[j] += g * v;
                        dqkv[key[j] * STRIDE + (H + KV + kv) * S + c] += p[j] * g;
                    }
                    mean += p[j] * dp[j];
                }
                for (int j = 0; j < n; j++)
                    for (int c = 0; c < S; c++) {
                        const double ds = p[j] * (dp[j] - mean) * scale;
                        dqkv[row * STRIDE + h * S + c] += ds * qkv[key[j] * STRIDE + (H + kv) * S + c];
                        dqkv[key[j] * STRIDE + (H + kv) * S + c] += ds * qkv[row * STRIDE + h * S + c];
                    }
            }
    double *ones = DOUBLES(N * STRIDE);
    for (int i = 0; i < N * STRIDE; i++) ones[i] = 1;
    check("attention", fetch(out, N * WIDTH), want, ones, 40, N * WIDTH);
    check("attention lse", fetch(a.lse, N * H), lse, ones, 40, N * H);
    check("attention dq dk dv", fetch(grad, N * STRIDE), dqkv, ones, 200, N * STRIDE);
}

static void test_kv_store(void **state) {
    (void)state;
    Random r = random_start(12, 0);
    enum { N = 9, STRIDE = 20, KC = 7, ROWS = 13 };
    const float *kv = noise(&r, N * STRIDE, 1), *k0 = noise(&r, ROWS * KC, 1), *v0 = noise(&r, ROWS * KC, 1);
    static const int32_t slot[N] = {12, -1, 0, 3, 5, -1, 4, 11, 1};
    Acts *in = acts(kv, N, STRIDE), *k = device_words(k0, ROWS * KC, ROWS * KC, false);
    Acts *v = device_words(v0, ROWS * KC, ROWS * KC, false);
    B->kv_store(D, k, v, acts_at(B, in, 2), acts_at(B, in, 11), STRIDE, ints(slot, N), N, KC);
    float *want_k = FLOATS(ROWS * KC), *want_v = FLOATS(ROWS * KC);
    memcpy(want_k, k0, ROWS * KC * 4);
    memcpy(want_v, v0, ROWS * KC * 4);
    for (int i = 0; i < N; i++) {
        if (slot[i] < 0) continue;
        for (int c = 0; c < KC; c++) {
            want_k[slot[i] * KC + c] = kv[i * STRIDE + 2 + c];
            want_v[slot[i] * KC + c] = kv[i * STRIDE + 11 + c];
        }
    }
    assert_memory_equal(fetch(k, ROWS * KC), want_k, ROWS * KC * 4);
    assert_memory_equal(fetch(v, ROWS * KC), want_v, ROWS * KC * 4);
}

/* ==== Value head ==== */

static void test_value(void **state) {
    (void)state;
    Random r = random_start(19, 0);
    static const int shape[][2] = {{1, 24}, {37, 24}, {5, 100}, {64, 1}, {3, 130}};
    for (int s = 0; s < 5; s++) {
        const int R = shape[s][0], C = shape[s][1];
        const size_t n = (size_t)(R * C);
        const float *h = noise(&r, n, 1), *w = noise(&r, (size_t)C, 1), *b = noise(&r, 1, 1),
                    *dvalue = noise(&r, (size_t)R, 1);
        const float *h0 = noise(&r, n, 1), *w0 = noise(&r, (size_t)C, 1), *b0 = noise(&r, 1, 1);
        Floats *value = floats(NULL, (size_t)R), *dw = floats(w0, (size_t)C), *db = floats(b0, 1),
               *dv = floats(dvalue, (size_t)R);
        Acts *dev_h = acts(h, R, C), *dh = acts(h0, R, C);
        Weights *dev_w = weights(w, (size_t)C);
        B->value_forward(D, value, dev_h, dev_w, weights(b, 1), R, C);
        sum_check("value", fetch(value, (size_t)R), linear_reference(h, w, b, R, C, 1, same), C, (size_t)R);
        Sum sh = sums(n, h0), sw = sums((size_t)C, w0), sb = sums(1, b0);
        for (int twice = 0; twice < 2; twice++) {
            B->value_backward(D, dh, dw, db, dv, dev_h, dev_w, R, C);
            for (int i = 0; i < R; i++) {
                sum_add(sb, 0, dvalue[i]);
                for (int c = 0; c < C; c++) {
                    sum_add(sh, (size_t)(i * C + c), (double)dvalue[i] * w[c]);
                    sum_add(sw, (size_t)c, (double)dvalue[i] * h[i * C + c]);
                }
            }
            sum_check("value dh", fetch(dh, n), sh, 2, n);
            sum_check("value dw", fetch(dw, (size_t)C), sw, 2 * R, (size_t)C);
            sum_check("value db", fetch(db, 1), sb, 2 * R, 1);
        }
    }
}

/* ==== Optimizer ==== */

static void test_square_sum(void **state) {
    (void)state;
    Random r = random_start(20, 0);
    static const size_t length[] = {0, 1, 15, 65536, 65537, 300001};
    for (size_t s = 0; s < sizeof length / sizeof *length; s++) {
        const float *x = noise(&r, length[s], 1);
        long double want = 0;
        for (size_t i = 0; i < length[s]; i++) want += (long double)x[i] * x[i];
        const double got = B->square_sum(D, floats(x, length[s]), length[s]);
        assert_true(fabs(got - (double)want) <= 1e-12 * (double)want);
    }
    /* the arithmetic must not overflow; NaN must propagate */
    const float large[3] = {3e30f, 0, 4e30f}, bad[2] = {1, NAN};
    assert_true(fabs(B->square_sum(D, floats(large, 3), 3) / 25e60 - 1) < 1e-6);
    assert_true(isnan(B->square_sum(D, floats(bad, 2), 2)));
}

static void test_adamw(void **state) {
    (void)state;
    Random r = random_start(21, 0);
    enum { N = 1003 };
    static const struct {
        double lr, b1, b2, eps, decay, scale;
    } how[] = {{1e-2, 0.9, 0.999, 1e-8, 0, 1},
               {1e-1, 0.9, 0.95, 1e-6, 0.1, 0.25},
               {1, 0, 0, 1e-8, 0.5, 1},
               {3e-4, 0.8, 0.9, 1, 0, 3}};
    for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
        const float *start = noise(&r, N, 1);
        double *p = DOUBLES(N), *m = DOUBLES(N), *v = DOUBLES(N), *size = DOUBLES(N);
        for (int i = 0; i < N; i++) p[i] = start[i];
        Weights *w = weights(start, N);
        Floats *dm = floats(FLOATS(N), N), *dv = floats(FLOATS(N), N);
        const double b1 = (float)how[k].b1, b2 = (float)how[k].b2, lr = (float)how[k].lr, eps = (float)how[k].eps;
        for (int step = 1; step <= 12; step++) {
            float *grad = noise(&r, N, pow(10, step % 5 - 3));
            for (int i = 0; i < N; i += 10) grad[i] = 0; /* never a gradient: changed by weight decay alone */
            const AdamW a = {.n = N,
                             .lr = (float)lr,
                             .beta1 = (float)b1,
                             .beta2 = (float)b2,
                             .eps = (float)eps,
                             .weight_decay = (float)how[k].decay,
                             .grad_scale = (float)how[k].scale,
                             .step = step,
                             .weights = w,
                             .grad = floats(grad, N),
                             .m = dm,
                             .v = dv};
            B->adamw(D, &a);
            for (int i = 0; i < N; i++) {
                const double g = grad[i] * how[k].scale;
                m[i] = b1 * m[i] + (1 - b1) * g;
                v[i] = b2 * v[i] + (1 - b2) * g * g;
                const double update = m[i] / (1 - pow(b1, step)) / (sqrt(v[i] / (1 - pow(b2, step))) + eps);
                p[i] -= lr * (update + (float)how[k].decay * p[i]);
                /* terms of m cancel, so the error is relative to the terms */
                size[i] += 4 * fabs(p[i]) + lr * 16 * fmax(1, fabs(update));
            }
            check("adamw weights", fetch(w, N), p, size, 2, N);
        }
        for (int i = 0; i < N; i += 10)
            assert_true(fabs(p[i] - start[i] * pow(1 - lr * (float)how[k].decay, 12)) < 1e-12);
        check("adamw v", fetch(dv, N), v, NULL, 40, N);
    }
}

/* ==== Threads ==== */

enum { TN = 200, TC = 136, TV = 600, TVP = 640, OUTPUTS = 24 }; /* large enough that other threads are woken */

/* Runs the table's operations with `threads` threads and collects the results of each. exact: the number of outputs,
 * which come first, of operations without a matrix product. */
static int run_all(int threads, float *output[OUTPUTS], size_t length[OUTPUTS], int *exact) {
    omp_set_num_threads(threads);
    Device *d;
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    Random r = random_start(22, 0);
    const size_t n = TN * TC;
    int k = 0;
    const float *x = noise(&r, n, 1), *y = noise(&r, n, 1), *small = noise(&r, TC, 1),
                *table = noise(&r, TVP * TC, 0.2);
    const int32_t *token = picks(&r, TN, TV), *row = picks(&r, TN, TN);
    Ints *dt = ints(token, TN), *drow = ints(row, TN);
    Acts *dx = acts(x, TN, TC), *dy = acts(y, TN, TC), *sum = acts(NULL, TN, TC), *out = acts(NULL, TN, TC);
    Weights *w = weights(small, TC), *wte = device_words(table, TVP * TC, TVP * TC, false);
    Floats *mean = floats(NULL, TN), *rstd = floats(NULL, TN), *dw = floats(small, TC), *db = floats(small, TC);
    Floats *dwte = floats(table, TVP * TC), *dwpe = floats(table, TVP * TC);
#define OUTPUT(from, size) output[k] = fetch(from, size), length[k++] = size
    B->embed_forward(d, out, wte, wte, dt, drow, 1, TN, TC);
    OUTPUT(out, n);
    B->embed_backward(d, dwte, dwpe, dx, dt, drow, 1, TN, TC);
    OUTPUT(dwte, TVP * TC);
    OUTPUT(dwpe, TVP * TC);
    Norm norm = norm_of(NORM_LAYER, dx, out, mean, rstd, w, w, TN, TC);
    norm.delta = dy;
    norm.sum = sum;
    B->norm_forward(d, &norm);
    OUTPUT(out, n);
    B->noise_add(d, out, mean, dt, drow, TN, TC, 1, 2);
    OUTPUT(out, n);
    norm.x = sum;
    norm.dout = dy;
    norm.dx = out;
    norm.dw = dw;
    norm.db = db;
    B->norm_backward(d, &norm);
    OUTPUT(out, n);
    OUTPUT(dw, TC);
    OUTPUT(db, TC);
    B->gelu_forward(d, out, dx, n);
    OUTPUT(out, n);
    B->gelu_backward(d, dy, dx, n);
    OUTPUT(dy, n);
    B->scatter_rows(d, dy, dx, drow, TN, TC);
    OUTPUT(dy, n);
    B->value_backward(d, dy, dw, db, mean, dx, w, TN, TC);
    OUTPUT(dy, n);
    OUTPUT(dw, TC);
    B->value_forward(d, mean, dx, w, w, TN, TC);
    OUTPUT(mean, TN);
    const double squares = B->square_sum(d, dwte, TVP * TC);
    output[k] = FLOATS(2);
    length[k] = 2;
    memcpy(output[k++], &squares, sizeof squares);
    const AdamW a = {.n = TVP * TC,
                     .lr = 0.1f,
                     .beta1 = 0.9f,
                     .beta2 = 0.9f,
                     .eps = 1e-8f,
                     .grad_scale = 1,
                     .step = 1,
                     .weights = wte,
                     .grad = dwte,
                     .m = floats(FLOATS(TVP * TC), TVP * TC),
                     .v = floats(FLOATS(TVP * TC), TVP * TC)};
    B->adamw(d, &a);
    OUTPUT(wte, TVP * TC);
    *exact = k;
    B->linear_forward(d, out, dx, weights_at(B, wte, 0), NULL, TN, TC, TC);
    OUTPUT(out, n);
    B->linear_backward(d, out, dwpe, db, dx, dy, wte, TN, TC, TC);
    OUTPUT(out, n);
    OUTPUT(dwpe, TC * TC);
    const Head head = {.rows = TN,
                       .channels = TC,
                       .vocab = TV,
                       .padded_vocab = TVP,
                       .temperature = 5,
                       .h = dx,
                       .weight = wte,
                       .target = dt,
                       .logp = rstd,
                       .dlogp = mean,
                       .dh = out,
                       .dweight = dwte};
    B->head(d, &head);
    OUTPUT(rstd, TN);
    OUTPUT(out, n);
    OUTPUT(dwte, TVP * TC);
#undef OUTPUT
    assert_true(B->sync(d, &e));
    B->close(d);
    return k;
}

static void test_threads(void **state) {
    (void)state;
    const int threads = omp_get_max_threads();
    float *one[OUTPUTS], *other[OUTPUTS];
    size_t length[OUTPUTS];
    int exact;
    const int n = run_all(1, one, length, &exact);
    for (int t = 2; t <= 3; t++) {
        run_all(t, other, length, &exact);
        for (int k = 0; k < exact; k++)
            if (memcmp(one[k], other[k], length[k] * sizeof(float)))
                fail_msg("output %d is not the same with %d threads as with one", k, t);
        for (int k = exact; k < n; k++) {
            double most = 0, difference = 0;
            for (size_t i = 0; i < length[k]; i++) {
                most = fmax(most, fabs(one[k][i]));
                difference = fmax(difference, fabs(one[k][i] - other[k][i]));
            }
            /* sums of up to 600 terms in another order: some tens of roundings of 2^-24 = 6e-8 */
            if (!(difference <= 4e-6 * most))
                fail_msg("output %d differs by %g of %g with %d threads", k, difference, most, t);
        }
    }
    omp_set_num_threads(threads);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_table),
        TEST(test_weights_changed),
        TEST(test_memory),
        TEST(test_failure),
        TEST(test_peak),
        TEST(test_scratch),
        TEST(test_packs),
        TEST(test_embed),
        TEST(test_embed_scaled),
        TEST(test_embed_blocks),
        TEST(test_add),
        TEST(test_noise),
        TEST(test_rows),
        TEST(test_linear),
        TEST(test_linear_bf16),
        TEST(test_linear_bf16_bits),
        TEST(test_linear_few_bits),
        TEST(test_bf16_operands),
        TEST(test_quantized),
        TEST(test_lora),
        TEST(test_dora),
        TEST(test_frozen),
        TEST(test_gelu),
        TEST(test_gate),
        TEST(test_stale_weights),
        TEST(test_many_shapes),
        TEST(test_layernorm_forward),
        TEST(test_layernorm_backward),
        TEST(test_rmsnorm_forward),
        TEST(test_rmsnorm_backward),
        TEST(test_rmsnorm_variants),
        TEST(test_rotary),
        TEST(test_attention),
        TEST(test_kv_store),
        TEST(test_value),
        TEST(test_square_sum),
        TEST(test_adamw),
        TEST(test_threads),
    };
    return cmocka_run_group_tests_name("backend", tests, open_device, close_device);
}
