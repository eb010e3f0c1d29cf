/* test_attention.c - attention of the CPU backend against float64 loops written from the formula, and cpu/vector_math.h
 * against libm. */
#include "../llmc/base/error.h"      /* xmalloc, xcalloc */
#include "../llmc/base/random.h"     /* random_below, Random, random_start, random_real */
#include "../llmc/cpu/vector_math.h" /* cpu_exp, cpu_tanh, cpu_log, cpu_from_bits */
#include "../llmc/model/backend.h"   /* Acts, Attention, Ints, Floats */
#include "../llmc/model/batch.h"     /* Segment */
#include "cpu_device.h"              /* B, close_device, open_device */
#include <math.h>
#include <omp.h>

/* ==== A problem and its reference ==== */

enum { SEGMENTS_MAX = 64 };

/* The arrays of one attention. In training q, k, v are columns of one buffer; in decoding k, v are separate caches. */
typedef struct Problem {
    Attention a;
    Segment segment[SEGMENTS_MAX];
    int key_rows;
    float *q, *k, *v, *out, *lse, *dout, *dq, *dk, *dv; /* in training q, k, v, dq, dk, dv point into qkv and dqkv */
    float *memory[8];
    size_t qkv_floats; /* number of floats in dqkv */
} Problem;

static float *filled(Random *r, size_t n, float amplitude) {
    float *x = xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = amplitude * (float)(2 * random_real(r) - 1);
    return x;
}

static float *garbage(size_t n) { /* contents of a reused buffer: an operation must overwrite them, not add to them */
    float *x = xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = NAN;
    return x;
}

static void problem_arrays(Problem *p, Random *r, int rows, int heads, int kv_heads, int D, bool cache, int key_rows,
                           float amplitude) {
    Attention *a = &p->a;
    const size_t q_width = (size_t)heads * D, kv_width = (size_t)kv_heads * D, width = q_width + 2 * kv_width;
    a->rows = rows;
    a->heads = heads;
    a->kv_heads = kv_heads;
    a->head_size = D;
    a->scale = 1.0f / sqrtf((float)D);
    a->segment = (const Ints *)p->segment;
    p->key_rows = cache ? key_rows : rows;
    if (cache) {
        p->q = p->memory[0] = filled(r, rows * q_width, amplitude);
        p->k = p->memory[1] = filled(r, key_rows * kv_width, amplitude);
        p->v = p->memory[2] = filled(r, key_rows * kv_width, 1);
        a->q_stride = (int)q_width;
        a->kv_stride = (int)kv_width;
    } else {
        p->q = p->memory[0] = filled(r, rows * width, amplitude);
        p->k = p->q + q_width;
        p->v = p->k + kv_width;
        a->q_stride = a->kv_stride = (int)width;
        p->qkv_floats = rows * width;
        p->dq = p->memory[3] = garbage(rows * width);
        p->dk = p->dq + q_width;
        p->dv = p->dk + kv_width;
        p->dout = p->memory[4] = filled(r, rows * q_width, 1);
    }
    p->out = p->memory[5] = garbage(rows * q_width);
    p->lse = p->memory[6] = garbage((size_t)rows * heads);
    a->q = (Acts *)p->q;
    a->k = (Acts *)p->k;
    a->v = (Acts *)p->v;
    a->out = (Acts *)p->out;
    a->lse = (Floats *)p->lse;
    a->dout = (Acts *)p->dout;
    a->dq = (Acts *)p->dq;
    a->dk = (Acts *)p->dk;
    a->dv = (Acts *)p->dv;
}

static void problem_free(Problem *p) {
    for (int i = 0; i < 8; i++) free(p->memory[i]);
}

/* Appends a segment `gap` rows after the last one. In training its keys are its own rows. */
static void add(Problem *p, int gap, int len, int prefix_start, int prefix_len) {
    const Segment *last = p->a.segments ? &p->segment[p->a.segments - 1] : NULL;
    const int start = (last ? last->start + last->len : 0) + gap;
    assert_true(p->a.segments < SEGMENTS_MAX);
    p->segment[p->a.segments++] = (Segment){start, len, prefix_start, prefix_len, start, 0};
}

/* Finds the key rows that query row `i` of segment s sees, and returns their number. A window is counted in positions:
 * those of the prefix come first, then those of the segment's own keys. */
static int visible(const Segment *s, int i, int window, int *key) {
    const int position = s->prefix_len + s->past + i;
    int n = 0;
    for (int at = 0; at <= position; at++) {
        if (window && at <= position - window) continue;
        key[n++] = at < s->prefix_len ? s->prefix_start + at : s->key_start + at - s->prefix_len;
    }
    return n;
}

typedef struct Reference {
    double *out, *lse, *dq, *dk, *dv; /* (N,H,D) (N,H) (N,H,D) (K,KVH,D) (K,KVH,D) */
    bool *inside;                     /* (N) */
} Reference;

/* out = softmax(scale q k^T) v and its derivative by the chain rule, one query at a time, in float64. */
static Reference reference(const Problem *p, bool backward) {
    const Attention *a = &p->a;
    const int D = a->head_size, H = a->heads;
    const size_t rows = a->rows, keys = p->key_rows;
    Reference r = {xcalloc(rows * H * D, 8),           xcalloc(rows * H, 8),
                   xcalloc(rows * H * D, 8),           xcalloc(keys * a->kv_heads * D, 8),
                   xcalloc(keys * a->kv_heads * D, 8), xcalloc(rows, sizeof(bool))};
    int *key = xmalloc((2 * keys + 1) * sizeof *key);
    double *w = xmalloc((2 * keys + 1) * sizeof *w), *dw = xmalloc((2 * keys + 1) * sizeof *dw);
    double *slope = xmalloc((2 * keys + 1) * sizeof *slope);
    for (int s = 0; s < a->segments; s++)
        for (int i = 0; i < p->segment[s].len; i++)
            for (int h = 0; h < H; h++) {
                const size_t row = p->segment[s].start + i, kv = (size_t)h * a->kv_heads / H;
                const int n = visible(&p->segment[s], i, a->window, key);
                const float *q = p->q + row * a->q_stride + (size_t)h * D;
                double most = -INFINITY, total = 0, *out = r.out + (row * H + h) * D;
                r.inside[row] = true;
                for (int j = 0; j < n; j++) {
                    w[j] = 0;
                    for (int d = 0; d < D; d++) w[j] += (double)q[d] * p->k[(size_t)key[j] * a->kv_stride + kv * D + d];
                    w[j] *= a->scale;
                    slope[j] = 1;
                    if (a->cap > 0) {
                        const double bent = tanh(w[j] / a->cap);
                        w[j] = a->cap * bent;
                        slope[j] = 1 - bent * bent;
                    }
                    most = fmax(most, w[j]);
                }
                for (int j = 0; j < n; j++) total += exp(w[j] - most);
                r.lse[row * H + h] = most + log(total);
                for (int j = 0; j < n; j++) {
                    w[j] = exp(w[j] - most) / total;
                    for (int d = 0; d < D; d++) out[d] += w[j] * p->v[(size_t)key[j] * a->kv_stride + kv * D + d];
                }
                if (!backward) continue;
                double mean = 0; /* mean of dw weighted by w */
                for (int j = 0; j < n; j++) {
                    dw[j] = 0;
                    for (int d = 0; d < D; d++)
                        dw[j] +=
                            (double)p->dout[(row * H + h) * D + d] * p->v[(size_t)key[j] * a->kv_stride + kv * D + d];
                    mean += w[j] * dw[j];
                }
                for (int j = 0; j < n; j++) {
                    const double ds = w[j] * (dw[j] - mean) * slope[j] * a->scale;
                    const size_t at = ((size_t)key[j] * a->kv_heads + kv) * D;
                    for (int d = 0; d < D; d++) {
                        r.dq[(row * H + h) * D + d] += ds * p->k[(size_t)key[j] * a->kv_stride + kv * D + d];
                        r.dk[at + d] += ds * q[d];
                        r.dv[at + d] += w[j] * p->dout[(row * H + h) * D + d];
                    }
                }
            }
    free(key), free(w), free(dw), free(slope);
    return r;
}

static void reference_free(Reference *r) {
    free(r->out), free(r->lse), free(r->dq), free(r->dk), free(r->dv), free(r->inside);
}

/* Largest |x - y| over the rows of x (stride apart) and y (contiguous), relative to max(1, largest |y|). A NaN counts
 * as infinite. */
static double error_of(const float *x, size_t stride, const double *y, int rows, size_t width) {
    double worst = 0, size = 1;
    for (int i = 0; i < rows; i++)
        for (size_t c = 0; c < width; c++) {
            const double error = fabs(x[i * stride + c] - y[i * width + c]);
            worst = error <= worst ? worst : isnan(error) ? INFINITY : error;
            size = fmax(size, fabs(y[i * width + c]));
        }
    return worst / size;
}

/* Runs the forward pass (in training also the backward pass) and compares all results. */
static void check(Problem *p, double tolerance, const char *what) {
    const Attention *a = &p->a;
    const bool backward = p->dq != NULL;
    const size_t width = (size_t)a->heads * a->head_size, kv_width = (size_t)a->kv_heads * a->head_size;
    Reference r = reference(p, backward);
    B->attention_forward(D, a);
    double e[5] = {error_of(p->out, width, r.out, a->rows, width),
                   error_of(p->lse, a->heads, r.lse, a->rows, a->heads)};
    if (backward) {
        B->attention_backward(D, a);
        e[2] = error_of(p->dq, a->q_stride, r.dq, a->rows, width);
        e[3] = error_of(p->dk, a->kv_stride, r.dk, a->rows, kv_width);
        e[4] = error_of(p->dv, a->kv_stride, r.dv, a->rows, kv_width);
    }
    static const char *const name[] = {"out", "lse", "dq", "dk", "dv"};
    for (int i = 0; i < 5; i++)
        if (!(e[i] <= tolerance))
            fail_msg("%s: %s is off by %g, allowed %g (heads %d/%d, size %d, rows %d, segments %d)", what, name[i],
                     e[i], tolerance, a->heads, a->kv_heads, a->head_size, a->rows, a->segments);
    for (int row = 0; row < a->rows; row++) /* exactly 0 outside the segments */
        if (!r.inside[row])
            for (size_t c = 0; c < width; c++) assert_true(p->out[row * width + c] == 0);
    reference_free(&r);
}

/* Relative to max(1, largest result). A result is a sum of up to a few hundred terms; a weight has a relative error of
 * its score's rounding, which is a sum of up to 128 products of order 1. Together these are some tens of roundings of
 * 2^-24 = 6e-8, if they accumulate as a random walk: 4e-6 = 67 of them. */
static const double TOLERANCE = 4e-6;

/* ==== Shapes ==== */

static void test_lengths(void **state) {
    (void)state;
    static const int length[] = {1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 79, 80, 81, 127, 128, 129, 300};
    Random r = random_start(1, 1);
    for (size_t i = 0; i < sizeof length / sizeof *length; i++) {
        Problem p = {0};
        add(&p, 0, length[i], 0, 0);
        problem_arrays(&p, &r, length[i], 2, 2, 64, false, 0, 1);
        check(&p, TOLERANCE, "one segment");
        problem_free(&p);
    }
}

static void test_head_sizes(void **state) {
    (void)state;
    static const int size[] = {1,  2,  3,  5,   8,   16,  20,  24,  31,  32,  48,
                               64, 80, 96, 100, 128, 160, 256, 300, 512, 520, 1024};
    Random r = random_start(1, 2);
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        for (int cache = 0; cache < 2; cache++) {
            Problem p = {0};
            add(&p, 0, 70, 0, 0);
            add(&p, 0, 3, 2, 50);
            add(&p, 0, 19, 2, 50);
            add(&p, 0, 1, 2, 50);
            problem_arrays(&p, &r, 96, 2, 1, size[i], cache, 96, 1);
            check(&p, TOLERANCE, "head size");
            problem_free(&p);
        }
}

static void test_grouped_heads(void **state) {
    (void)state;
    static const int heads[][2] = {{1, 1}, {3, 3}, {4, 2}, {9, 3}, {8, 1}, {15, 3}, {64, 1}, {70, 1}, {130, 2}};
    Random r = random_start(1, 3);
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        Problem p = {0};
        add(&p, 0, 40, 0, 0);
        add(&p, 0, 5, 0, 40);
        add(&p, 0, 1, 0, 40);
        add(&p, 0, 33, 0, 17);
        add(&p, 0, 1, 0, 0);
        problem_arrays(&p, &r, 80, heads[i][0], heads[i][1], 16, false, 0, 1);
        check(&p, TOLERANCE, "grouped heads");
        problem_free(&p);
    }
}

/* In some trials a window, a cap, or both. The cap is small, so that it bends the scores. */
static void window_and_cap(Problem *p, Random *r) {
    p->a.window = random_below(r, 2) ? 1 + (int)random_below(r, random_below(r, 2) ? 20 : 150) : 0;
    p->a.cap = random_below(r, 2) ? 2 : 0;
}

/* Ragged batches with gaps and empty segments, and families that share prefixes: whole prompts, parts of them, prompts
 * with answers. */
static void test_random_packing(void **state) {
    (void)state;
    static const int sizes[] = {8, 16, 24, 32, 64, 64, 80};
    static const int heads[][2] = {{2, 2}, {3, 1}, {4, 2}, {1, 1}};
    Random r = random_start(20, 4);
    for (int trial = 0; trial < 80; trial++) {
        Problem p = {0};
        while (p.a.segments < 20) {
            const int gap = random_below(&r, 4) ? 0 : (int)random_below(&r, 9);
            const int prompt = (int)random_below(&r, random_below(&r, 3) ? 30 : 140), first = p.a.segments;
            add(&p, gap, prompt, 0, 0);
            const int start = p.segment[first].start;
            for (int answers = (int)random_below(&r, 6); answers > 0 && prompt > 0; answers--) {
                const int rows = p.segment[p.a.segments - 1].start + p.segment[p.a.segments - 1].len - start;
                const bool part = !random_below(&r, 4), deep = !random_below(&r, 5);
                const int from = part ? (int)random_below(&r, prompt) : 0, len = (deep ? rows : prompt) - from;
                add(&p, 0, (int)random_below(&r, random_below(&r, 3) ? 12 : 100), start + from,
                    part ? 1 + (int)random_below(&r, len) : len);
            }
        }
        const Segment *last = &p.segment[p.a.segments - 1];
        const int *h = heads[random_below(&r, 4)];
        problem_arrays(&p, &r, last->start + last->len + (int)random_below(&r, 17), h[0], h[1],
                       sizes[random_below(&r, 7)], false, 0, 1.5f);
        if (trial >= 40) window_and_cap(&p, &r);
        check(&p, TOLERANCE, "packing");
        problem_free(&p);
    }
}

/* Queries against a cache: single tokens and chunks, past keys, prefixes shared from any row, alone and in groups. */
static void test_random_cache(void **state) {
    (void)state;
    static const int sizes[] = {8, 24, 64, 64, 80, 128};
    static const int heads[][2] = {{2, 2}, {3, 1}, {8, 2}, {1, 1}};
    Random r = random_start(21, 5);
    for (int trial = 0; trial < 80; trial++) {
        Problem p = {0};
        int rows = 0, keys = 0;
        while (p.a.segments < 12) {
            const int prefix = random_below(&r, 3) ? 1 + (int)random_below(&r, 150) : 0, prefix_start = keys;
            keys += prefix;
            for (int n = 1 + (int)random_below(&r, 9); n > 0; n--) {
                const int len = random_below(&r, 4) ? 1 : 1 + (int)random_below(&r, 40);
                const int past = random_below(&r, 4) ? (int)random_below(&r, 200) : 0;
                p.segment[p.a.segments++] = (Segment){rows, len, prefix_start, prefix, keys, past};
                rows += len;
                keys += past + len;
            }
        }
        const int *h = heads[random_below(&r, 4)];
        problem_arrays(&p, &r, rows + 3, h[0], h[1], sizes[random_below(&r, 6)], true, keys, 1.5f);
        if (trial >= 40) window_and_cap(&p, &r);
        check(&p, TOLERANCE, "cache");
        problem_free(&p);
    }
}

/* The order of segments may differ from the order of their rows. */
static void test_unordered(void **state) {
    (void)state;
    Random r = random_start(22, 6);
    Problem p = {0};
    p.segment[0] = (Segment){50, 40, 0, 0, 50, 0};
    p.segment[1] = (Segment){3, 20, 0, 0, 3, 0};
    p.segment[2] = (Segment){23, 20, 3, 20, 23, 0};
    p.a.segments = 3;
    problem_arrays(&p, &r, 100, 2, 2, 16, false, 0, 1);
    check(&p, TOLERANCE, "unordered");
    problem_free(&p);
}

static void test_no_segments(void **state) {
    (void)state;
    Random r = random_start(22, 7);
    Problem p = {0};
    problem_arrays(&p, &r, 16, 2, 2, 16, false, 0, 1);
    check(&p, TOLERANCE, "no segments");
    problem_free(&p);
}

/* ==== Numbers ==== */

/* Scores beyond +-1e4: softmax is nearly one-hot and nothing overflows. A score of size s is rounded by about s 2^-24
 * at each of its D additions, in all by about sqrt(D) s 2^-24 (D = 64, s = 2e4: 1e-2), which is the relative error of
 * its probability. The tolerance is twice that. */
static void test_large_scores(void **state) {
    (void)state;
    Random r = random_start(23, 8);
    for (int cache = 0; cache < 2; cache++)
        for (int trial = 0; trial < 4; trial++) {
            Problem p = {0};
            add(&p, 0, 90, 0, 0);
            add(&p, 0, 30, 0, 90);
            add(&p, 0, 1, 0, 90);
            problem_arrays(&p, &r, 128, 2, 2, 64, cache, 128, 200); /* products of about 200^2 sqrt(64)/3/8 = 1.3e4 */
            B->attention_forward(D, &p.a);
            double most = 0;
            for (int i = 0; i < 121 * 2; i++) most = fmax(most, fabs(p.lse[i]));
            assert_true(most > 2e4);
            check(&p, 2e-2, "large scores");
            problem_free(&p);
        }
}

/* Equal scores, exact in any order of summation: softmax is uniform, however large the score is. */
static void test_equal_scores(void **state) {
    (void)state;
    Random r = random_start(23, 9);
    for (float size = -0x1p60f; size < 0x1p61f; size += 0x1p60f) {
        Problem p = {0};
        add(&p, 0, 100, 0, 0);
        add(&p, 0, 2, 0, 100);
        problem_arrays(&p, &r, 102, 1, 1, 16, true, 102, 1);
        for (int i = 0; i < 102 * 16; i++) {
            p.q[i] = 0x1p60f;
            p.k[i] = size;
            p.v[i] = (float)(i / 16);
        }
        B->attention_forward(D, &p.a);
        for (int i = 0; i < 102; i++)
            assert_float_equal(p.out[i * 16 + i % 16], i < 101 ? i / 2.0f : (100 * 49.5f + 201) / 102, 1e-4);
        problem_free(&p);
    }
}

/* A NaN in a row reaches exactly the queries that see the row: the trainers' checks must find it, and the other
 * sequences of the batch must be unaffected. */
static void test_nan(void **state) {
    (void)state;
    Random r = random_start(23, 10);
    Problem p = {0};
    add(&p, 0, 70, 0, 0);
    add(&p, 0, 70, 0, 0);
    add(&p, 0, 1, 70, 70);
    add(&p, 0, 1, 70, 30);
    add(&p, 0, 1, 0, 0);
    problem_arrays(&p, &r, 143, 1, 1, 64, false, 0, 1);
    p.k[(size_t)115 * p.a.kv_stride + 5] = NAN;
    B->attention_forward(D, &p.a);
    for (int row = 0; row < 143; row++) {
        const bool sees = (row >= 115 && row < 140) || row == 140;
        for (int d = 0; d < 64; d++) assert_true(isnan(p.out[row * 64 + d]) == sees);
        assert_true(isnan(p.lse[row]) == sees);
    }
    problem_free(&p);
}

/* ==== Reproducibility, bit for bit ==== */

static void make_mixed(Problem *p, Random *r, bool cache) {
    add(p, 0, 200, 0, 0);
    for (int i = 0; i < 9; i++) add(p, 0, 1 + 7 * i, 0, 150 + 50 * (i > 5));
    add(p, 3, 1, 0, 0);
    add(p, 0, 130, 0, 0);
    for (int i = 0; i < 8; i++) add(p, 0, 1, 465, 130);
    problem_arrays(p, r, 624, 4, 2, 64, cache, 624, 1);
}

static void test_threads(void **state) {
    (void)state;
    const int threads = omp_get_max_threads();
    for (int cache = 0; cache < 2; cache++) {
        Problem p[3] = {0};
        for (int i = 0; i < 3; i++) {
            Random r = random_start(24, 11);
            make_mixed(&p[i], &r, cache);
            omp_set_num_threads(i + 1);
            B->attention_forward(D, &p[i].a);
            if (!cache) B->attention_backward(D, &p[i].a);
        }
        omp_set_num_threads(threads);
        const size_t rows = p[0].a.rows;
        for (int i = 1; i < 3; i++) {
            assert_memory_equal(p[0].out, p[i].out, rows * 4 * 64 * sizeof(float));
            assert_memory_equal(p[0].lse, p[i].lse, rows * 4 * sizeof(float));
            if (!cache) assert_memory_equal(p[0].dq, p[i].dq, p[0].qkv_floats * sizeof(float));
        }
        for (int i = 0; i < 3; i++) problem_free(&p[i]);
    }
}

/* A family gives the same bits alone and packed with others, and a member's rows give the same bits without its
 * siblings. */
static void check_company(int window) {
    Random r = random_start(25, 12);
    Problem p = {0};
    make_mixed(&p, &r, false);
    p.a.window = window;
    B->attention_forward(D, &p.a);
    B->attention_backward(D, &p.a);
    const size_t width = 4 * 64;
    float *out = xmalloc(p.a.rows * width * sizeof *out), *lse = xmalloc((size_t)p.a.rows * 4 * sizeof *lse);
    float *dqkv = xmalloc(p.qkv_floats * sizeof *dqkv);
    memcpy(out, p.out, p.a.rows * width * sizeof *out);
    memcpy(lse, p.lse, (size_t)p.a.rows * 4 * sizeof *lse);
    memcpy(dqkv, p.dq, p.qkv_floats * sizeof *dqkv);

    const int segments = p.a.segments;
    for (int s = 0; s < segments; s++) { /* forward: one segment; the rows of its prefix remain as keys */
        Attention a = p.a;
        a.segments = 1;
        a.segment = (const Ints *)&p.segment[s];
        B->attention_forward(D, &a);
        const size_t row = p.segment[s].start, len = p.segment[s].len;
        assert_memory_equal(p.out + row * width, out + row * width, len * width * sizeof *out);
        assert_memory_equal(p.lse + row * 4, lse + row * 4, len * 4 * sizeof *lse);
    }
    memcpy(p.out, out, p.a.rows * width * sizeof *out);
    memcpy(p.lse, lse, (size_t)p.a.rows * 4 * sizeof *lse);
    for (int s = 0, end; s < segments; s = end) { /* backward: one family */
        for (end = s + 1; end < segments && p.segment[end].prefix_len;) end++;
        Attention a = p.a;
        a.segments = end - s;
        a.segment = (const Ints *)&p.segment[s];
        B->attention_backward(D, &a);
        const size_t row = p.segment[s].start, rows = p.segment[end - 1].start + p.segment[end - 1].len - row;
        assert_memory_equal(p.dq + row * p.a.q_stride, dqkv + row * p.a.q_stride, rows * p.a.q_stride * sizeof *dqkv);
    }
    free(out), free(lse), free(dqkv);
    problem_free(&p);
}

static void test_company(void **state) {
    (void)state;
    check_company(0);
    check_company(40);
    check_company(170);
}

/* A shared prefix gives the same as a sequence that contains a copy of it, up to rounding. */
static void test_prefix_is_copy(void **state) {
    (void)state;
    Random r = random_start(26, 13);
    const int size = 64, prompt = 77, answer = 30;
    Problem shared = {0}, copy = {0};
    add(&shared, 0, prompt, 0, 0);
    add(&shared, 0, answer, 0, prompt);
    add(&shared, 0, answer, 0, prompt);
    add(&copy, 0, prompt + answer, 0, 0);
    problem_arrays(&shared, &r, prompt + 2 * answer, 2, 2, size, false, 0, 1);
    problem_arrays(&copy, &r, prompt + answer, 2, 2, size, false, 0, 1);
    const size_t stride = shared.a.q_stride;
    memcpy(copy.q, shared.q, prompt * stride * sizeof(float));
    memcpy(copy.q + prompt * stride, shared.q + (prompt + answer) * stride, answer * stride * sizeof(float));
    B->attention_forward(D, &shared.a);
    B->attention_forward(D, &copy.a);
    for (int i = 0; i < answer * 2 * size; i++)
        assert_float_equal(shared.out[(prompt + answer) * 2 * size + i], copy.out[prompt * 2 * size + i], 1e-6);
    problem_free(&shared), problem_free(&copy);
}

/* ==== Cache ==== */

static void test_kv_store(void **state) {
    (void)state;
    enum { ROWS = 300, WIDTH = 300, STRIDE = 700, SLOTS = 500 };
    Random r = random_start(27, 14);
    float *kv = filled(&r, (size_t)ROWS * STRIDE, 1), *k = filled(&r, SLOTS * WIDTH, 1),
          *v = filled(&r, SLOTS * WIDTH, 1);
    float *k0 = xmalloc(SLOTS * WIDTH * 4), *v0 = xmalloc(SLOTS * WIDTH * 4);
    memcpy(k0, k, SLOTS * WIDTH * 4);
    memcpy(v0, v, SLOTS * WIDTH * 4);
    int32_t slot[ROWS], row_of[SLOTS];
    for (int i = 0; i < SLOTS; i++) row_of[i] = -1;
    for (int i = 0; i < ROWS; i++) {
        slot[i] = i % 5 == 2 ? -1 : (i * 7 + 3) % SLOTS;
        if (slot[i] >= 0) row_of[slot[i]] = i;
    }
    B->kv_store(D, (Acts *)k, (Acts *)v, (const Acts *)kv, (const Acts *)(kv + WIDTH), STRIDE, (const Ints *)slot, ROWS,
                WIDTH);
    for (int i = 0; i < SLOTS; i++) {
        const float *from = kv + (size_t)(row_of[i] < 0 ? 0 : row_of[i]) * STRIDE;
        assert_memory_equal(k + i * WIDTH, row_of[i] < 0 ? k0 + i * WIDTH : from, WIDTH * 4);
        assert_memory_equal(v + i * WIDTH, row_of[i] < 0 ? v0 + i * WIDTH : from + WIDTH, WIDTH * 4);
    }
    free(kv), free(k), free(v), free(k0), free(v0);
}

/* ==== cpu/vector_math.h ==== */

/* Error of y in units in the last place of the float32 nearest to the exact value. */
static double ulps(float y, double exact) {
    const float nearest = (float)exact;
    if (isnan(exact)) return isnan(y) ? 0 : INFINITY;
    if (isinf(nearest) || isinf(y)) return y == nearest ? 0 : INFINITY;
    const double ulp = fmax(ldexp(1, ilogb(nearest == 0 ? 1e-45 : nearest) - 23), 0x1p-149);
    return fabs(y - exact) / ulp;
}

typedef float Function(float);
typedef double Exact(double);

/* Every 509th float between the first and the last bit pattern, of both signs, in blocks so that the vectorised code
 * runs. */
static double worst_ulps(void (*function)(float *y, const float *x, int n), Exact exact, float *where) {
    enum { BLOCK = 256 };
    float x[BLOCK], y[BLOCK];
    double worst = 0;
    for (uint64_t bits = 0; bits <= 0xffffffffu;) {
        for (int i = 0; i < BLOCK; i++, bits += 1021) x[i] = cpu_from_bits((uint32_t)bits);
        function(y, x, BLOCK);
        for (int i = 0; i < BLOCK; i++) {
            const double e = ulps(y[i], exact(x[i]));
            if (e > worst) {
                worst = e;
                *where = x[i];
            }
        }
    }
    return worst;
}

/* Every float in [low, high]. */
static double worst_ulps_in(float (*function)(float), Exact exact, float low, float high, float step, float *where) {
    double worst = 0;
    for (double x = low; x <= high; x += step) {
        const double e = ulps(function((float)x), exact((double)(float)x));
        if (e > worst) {
            worst = e;
            *where = (float)x;
        }
    }
    return worst;
}

static void exp_block(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = cpu_exp(x[i]);
}

static void tanh_block(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = cpu_tanh(x[i]);
}

static void log_block(float *y, const float *x, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) y[i] = cpu_log(x[i]);
}

static float exp_one(float x) { return cpu_exp(x); }
static float tanh_one(float x) { return cpu_tanh(x); }

static void test_exp(void **state) {
    (void)state;
    float where = 0;
    double e = worst_ulps(exp_block, exp, &where);
    if (!(e < 1.0)) fail_msg("exp(%a): off by %g ulp", where, e);
    e = worst_ulps_in(exp_one, exp, -106, 90, 1.37e-4f, &where);
    if (!(e < 1.0)) fail_msg("exp(%a): off by %g ulp", where, e);
    assert_true(cpu_exp(0) == 1 && cpu_exp(-0.0f) == 1);
    assert_true(cpu_exp(-INFINITY) == 0 && cpu_exp(-3e38f) == 0 && cpu_exp(-104) == 0);
    assert_true(cpu_exp(INFINITY) == INFINITY && cpu_exp(3e38f) == INFINITY && cpu_exp(88.73f) == INFINITY);
    assert_true(isfinite(cpu_exp(88.72f)) && cpu_exp(-103.9f) > 0);
    assert_true(isnan(cpu_exp(NAN)) && isnan(cpu_exp(-NAN)));
}

/* Every 1021st positive normal number, and every 4th close to 1, where the result is small. */
static void test_log(void **state) {
    (void)state;
    enum { BLOCK = 256 };
    float x[BLOCK], y[BLOCK];
    for (int part = 0; part < 2; part++) {
        const uint32_t step = part ? 4 : 1021;
        for (uint32_t bits = part ? 0x3f000000u : 0x00800000u;
             bits < (part ? 0x40000000u : 0x7f800000u - BLOCK * 1021);) {
            for (int i = 0; i < BLOCK; i++, bits += step) x[i] = cpu_from_bits(bits);
            log_block(y, x, BLOCK);
            for (int i = 0; i < BLOCK; i++)
                if (!(ulps(y[i], log(x[i])) < 1.0)) fail_msg("log(%a) is %a", x[i], y[i]);
        }
    }
    assert_true(cpu_log(1) == 0);
    assert_true(isnan(cpu_log(NAN)) && isnan(cpu_log(INFINITY)));
}

static void test_tanh(void **state) {
    (void)state;
    float where = 0;
    double e = worst_ulps(tanh_block, tanh, &where);
    if (!(e < 2.0)) fail_msg("tanh(%a): off by %g ulp", where, e);
    e = worst_ulps_in(tanh_one, tanh, -12, 12, 1.7e-5f, &where);
    if (!(e < 2.0)) fail_msg("tanh(%a): off by %g ulp", where, e);
    assert_true(cpu_tanh(0) == 0 && !signbit(cpu_tanh(0.0f)) && signbit(cpu_tanh(-0.0f)));
    assert_true(cpu_tanh(INFINITY) == 1 && cpu_tanh(-INFINITY) == -1 && cpu_tanh(1e30f) == 1);
    assert_true(isnan(cpu_tanh(NAN)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_head_sizes),
        cmocka_unit_test(test_grouped_heads),
        cmocka_unit_test(test_random_packing),
        cmocka_unit_test(test_random_cache),
        cmocka_unit_test(test_unordered),
        cmocka_unit_test(test_no_segments),
        cmocka_unit_test(test_large_scores),
        cmocka_unit_test(test_equal_scores),
        cmocka_unit_test(test_nan),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_company),
        cmocka_unit_test(test_prefix_is_copy),
        cmocka_unit_test(test_kv_store),
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_log),
        cmocka_unit_test(test_tanh),
    };
    return cmocka_run_group_tests_name("attention", tests, open_device, close_device);
}
