/* test_cuda_attention.cpp - attention on the GPU against float64 loops from the formula: all kernels, forward and
 * backward. */
#include "../llmc/base/random.h"             /* Random, random_start */
#include "../llmc/cuda/attention.cuh"        /* cuda_attention_backward, cuda_attention_forward, mma_forward, ... */
#include "../llmc/cuda/attention_decode.cuh" /* cuda_kv_store */
#include "../llmc/cuda/common.cuh"           /* bf16, cuda_scratch_begin */
#include "../llmc/model/backend.h"           /* Acts, Attention, Ints, Floats */
#include "../llmc/model/batch.h"             /* Segment */
#include "kernels.h"                         /* KERNEL_TEST, Numbers, device_numbers, same_bits, ... */
#include <algorithm>

/* ==== A problem ==== */

typedef std::vector<Segment> Segments;

struct Problem {
    int rows, heads, kv_heads, head_size;
    bool cache; /* keys and values are in a separate cache of key_rows rows */
    int key_rows;
    Segments segments;
    int window;            /* 0: none */
    float cap;             /* 0: none */
    Numbers q, k, v, dout; /* (rows, H, D) (K, KVH, D) (K, KVH, D) (rows, H, D) */
};

/* Appends a segment, `gap` rows after the last one. Its keys are its own rows. */
static void add(Problem *p, int gap, int len, int prefix_start = 0, int prefix_len = 0) {
    const int start = (p->segments.empty() ? 0 : p->segments.back().start + p->segments.back().len) + gap;
    p->segments.push_back(Segment{start, len, prefix_start, prefix_len, start, 0});
    p->rows = start + len;
}

template <typename T>
static void fill(Problem *p, Random *r, int heads, int kv_heads, int head_size, double amplitude = 1) {
    p->heads = heads;
    p->kv_heads = kv_heads;
    p->head_size = head_size;
    if (!p->cache) p->key_rows = p->rows;
    p->q = normals(r, (size_t)p->rows * heads * head_size, amplitude);
    p->k = normals(r, (size_t)p->key_rows * kv_heads * head_size, amplitude);
    p->v = normals(r, (size_t)p->key_rows * kv_heads * head_size, 1);
    p->dout = normals(r, p->q.size(), 1);
    round_to<T>(p->q);
    round_to<T>(p->k);
    round_to<T>(p->v);
    round_to<T>(p->dout);
}

/* A result and the magnitude of the terms that it sums. */
struct Result {
    Doubles value, size;
    void start(size_t n) {
        value.assign(n, 0);
        size.assign(n, 0);
    }
    void add(size_t i, double term, double magnitude) {
        value[i] += term;
        size[i] += magnitude;
    }
};

struct Reference {
    Result out, lse, dq, dk, dv;
    std::vector<bool> inside;
};

static Reference reference(const Problem &p, bool backward) {
    const int D = p.head_size, H = p.heads, KVH = p.kv_heads;
    const float scale = 1.0f / sqrtf((float)D);
    Reference r;
    r.out.start(p.q.size());
    r.dq.start(p.q.size());
    r.lse.start((size_t)p.rows * H);
    r.dk.start(p.k.size());
    r.dv.start(p.k.size());
    r.inside.assign((size_t)p.rows, false);
    for (const Segment &s : p.segments)
        for (int i = 0; i < s.len; i++) {
            std::vector<size_t> keys;
            for (int j = 0, position = s.prefix_len + s.past + i; j <= position; j++) /* the prefix, then own keys */
                if (p.window == 0 || j > position - p.window)
                    keys.push_back((size_t)(j < s.prefix_len ? s.prefix_start + j : s.key_start + j - s.prefix_len));
            const size_t row = (size_t)(s.start + i);
            r.inside[row] = true;
            for (int h = 0; h < H; h++) {
                const size_t kv = (size_t)(h / (H / KVH)), at = (row * H + h) * D;
                Doubles w(keys.size()), dw(keys.size()), slope(keys.size(), 1);
                double most = -INFINITY, total = 0, mean = 0, mean_size = 0, score_size = 1;
                for (size_t j = 0; j < keys.size(); j++) {
                    double dot = 0, magnitude = 0;
                    for (int d = 0; d < D; d++) {
                        const double term = (double)p.q[at + d] * p.k[(keys[j] * KVH + kv) * D + d];
                        dot += term;
                        magnitude += fabs(term);
                    }
                    w[j] = dot * scale;
                    if (p.cap > 0) {
                        const double bent = tanh(w[j] / p.cap);
                        w[j] = p.cap * bent;
                        slope[j] = 1 - bent * bent;
                    }
                    most = fmax(most, w[j]);
                    score_size = fmax(score_size, magnitude * scale);
                }
                for (size_t j = 0; j < keys.size(); j++) total += exp(w[j] - most);
                r.lse.value[row * H + h] = most + log(total);
                r.lse.size[row * H + h] = score_size + log(keys.size());
                for (size_t j = 0; j < keys.size(); j++) {
                    w[j] = exp(w[j] - most) / total;
                    for (int d = 0; d < D; d++) {
                        const double v = p.v[(keys[j] * KVH + kv) * D + d];
                        r.out.add(at + d, w[j] * v, w[j] * fabs(v) * (1 + score_size / 16));
                    }
                }
                if (!backward) continue;
                for (size_t j = 0; j < keys.size(); j++) {
                    dw[j] = 0;
                    double magnitude = 0;
                    for (int d = 0; d < D; d++) {
                        const double term = (double)p.dout[at + d] * p.v[(keys[j] * KVH + kv) * D + d];
                        dw[j] += term;
                        magnitude += fabs(term);
                    }
                    mean += w[j] * dw[j];
                    mean_size += w[j] * magnitude;
                }
                for (size_t j = 0; j < keys.size(); j++) {
                    const double ds = w[j] * (dw[j] - mean) * slope[j] * scale, steep = slope[j] + 0x1p-12;
                    const double ds_size = w[j] * (fabs(dw[j]) + mean_size) * steep * scale * (1 + score_size / 16);
                    const size_t key = (keys[j] * KVH + kv) * D;
                    for (int d = 0; d < D; d++) {
                        r.dq.add(at + d, ds * p.k[key + d], ds_size * fabs(p.k[key + d]));
                        r.dk.add(key + d, ds * p.q[at + d], ds_size * fabs(p.q[at + d]));
                        r.dv.add(key + d, w[j] * p.dout[at + d], w[j] * fabs(p.dout[at + d]) * (1 + score_size / 16));
                    }
                }
            }
        }
    return r;
}

/* ==== Running the kernels ==== */

/* Columns from `from` on of an array whose rows are `stride` wide. */
static Numbers columns(const Numbers &x, size_t rows, size_t stride, size_t from, size_t width) {
    Numbers y(rows * width);
    for (size_t i = 0; i < rows; i++)
        for (size_t c = 0; c < width; c++) y[i * width + c] = x[i * stride + from + c];
    return y;
}

struct Results {
    Numbers out, lse, dq, dk, dv;
};

template <typename T> static Results run(const Problem &p, bool backward, bool lse = true) {
    const size_t QW = (size_t)p.heads * p.head_size, KW = (size_t)p.kv_heads * p.head_size, W = QW + 2 * KW;
    const size_t N = (size_t)p.rows;
    Attention a = {};
    Indices words;
    for (const Segment &s : p.segments)
        for (int32_t word : {s.start, s.len, s.prefix_start, s.prefix_len, s.key_start, s.past}) words.push_back(word);
    a.rows = p.rows;
    a.segments = (int)p.segments.size();
    a.heads = p.heads;
    a.kv_heads = p.kv_heads;
    a.head_size = p.head_size;
    a.scale = 1.0f / sqrtf((float)p.head_size);
    a.window = p.window;
    a.cap = p.cap;
    a.segment = (const Ints *)device_indices(words);
    T *dqkv = NULL;
    if (p.cache) {
        a.q = (Acts *)device_numbers<T>(p.q);
        a.k = (Acts *)device_numbers<T>(p.k);
        a.v = (Acts *)device_numbers<T>(p.v);
        a.q_stride = (int)QW;
        a.kv_stride = (int)KW;
    } else { /* columns of one buffer, as in the model */
        Numbers qkv(N * W);
        for (size_t i = 0; i < N; i++)
            for (size_t c = 0; c < W; c++)
                qkv[i * W + c] = c < QW        ? p.q[i * QW + c]
                                 : c < QW + KW ? p.k[i * KW + c - QW]
                                               : p.v[i * KW + c - QW - KW];
        T *x = device_numbers<T>(qkv);
        a.q = (Acts *)x;
        a.k = (Acts *)(x + QW);
        a.v = (Acts *)(x + QW + KW);
        a.q_stride = a.kv_stride = (int)W;
    }
    T *out = device_garbage<T>(N * QW);
    float *sums = device_garbage<float>(N * p.heads);
    a.out = (Acts *)out;
    a.lse = lse ? (Floats *)sums : NULL;
    cuda_scratch_begin(D);
    cuda_attention_forward<T>(D, &a);
    Results r;
    r.out = fetch(out, N * QW);
    r.lse = fetch(sums, N * p.heads);
    if (!backward) return r;
    dqkv = device_garbage<T>(N * W);
    a.dout = (Acts *)device_numbers<T>(p.dout);
    a.dq = (Acts *)dqkv;
    a.dk = (Acts *)(dqkv + QW);
    a.dv = (Acts *)(dqkv + QW + KW);
    cuda_scratch_begin(D);
    cuda_attention_backward<T>(D, &a);
    const Numbers all = fetch(dqkv, N * W);
    r.dq = columns(all, N, W, 0, QW);
    r.dk = columns(all, N, W, QW, KW);
    r.dv = columns(all, N, W, QW + KW, KW);
    return r;
}

/* Relative to the sum of the absolute terms. bf16: rounding to 8 bits (2^-9 per value) affects weights, their gradients
 * and results, 2^-7 in all. float32: sums of some hundred terms, 64 roundings of 2^-24. */
template <typename T> static double tolerance() { return sizeof(T) == 2 ? 0x1p-7 : 0x1p-18; }

template <typename T> static void check(const char *name, const Problem &p, bool backward) {
    const Reference want = reference(p, backward);
    const Results got = run<T>(p, backward);
    print_message("  %s: %d rows, %d/%d heads of %d, window %d, cap %g, %s\n", name, p.rows, p.heads, p.kv_heads,
                  p.head_size, p.window, p.cap, sizeof(T) == 2 ? "bf16" : "float32");
    compare("out", got.out, want.out.value, want.out.size, tolerance<T>());
    compare("lse", got.lse, want.lse.value, want.lse.size, 0x1p-18);
    if (backward) {
        compare("dq", got.dq, want.dq.value, want.dq.size, tolerance<T>());
        compare("dk", got.dk, want.dk.value, want.dk.size, tolerance<T>());
        compare("dv", got.dv, want.dv.value, want.dv.size, tolerance<T>());
    }
    for (int row = 0; row < p.rows; row++) { /* rows in no segment must be exactly 0 */
        if (want.inside[(size_t)row]) continue;
        const size_t QW = (size_t)p.heads * p.head_size, KW = (size_t)p.kv_heads * p.head_size, at = (size_t)row;
        for (size_t c = 0; c < QW; c++) assert_true(got.out[at * QW + c] == 0);
        for (int h = 0; h < p.heads; h++) assert_true(got.lse[at * p.heads + h] == 0);
        if (!backward) continue;
        for (size_t c = 0; c < QW; c++) assert_true(got.dq[at * QW + c] == 0);
        for (size_t c = 0; c < KW; c++) assert_true(got.dk[at * KW + c] == 0 && got.dv[at * KW + c] == 0);
    }
}

template <typename T> static void check_both(const char *name, Problem p, Random *r, int heads, int kv_heads, int D) {
    fill<T>(&p, r, heads, kv_heads, D);
    check<T>(name, p, true);
}

/* ==== Tests ==== */

static Problem ragged() {
    Problem p = {};
    for (int len : {1, 17, 64, 0, 65, 33, 130}) add(&p, 0, len);
    return p;
}

/* A prompt with completions, one without, a prompt of which only a part is shared, a completion of a completion. Rows
 * in between belong to no segment. */
static Problem families() {
    Problem p = {};
    add(&p, 3, 70);
    for (int len : {33, 5, 80, 1}) add(&p, 0, len, 3, 70);
    add(&p, 2, 20);
    add(&p, 1, 40);
    const int prompt = p.segments.back().start;
    add(&p, 0, 19, prompt + 7, 21);
    const int answer = p.segments.back().start;
    add(&p, 4, 23, prompt + 30, 10 + 12); /* the prompt's end and the completion's beginning */
    add(&p, 0, 9, answer, 19);
    p.rows += 5;
    return p;
}

template <typename T> static void test_shapes(void **) {
    Random r = random_start(21, sizeof(T));
    check_both<T>("ragged segments", ragged(), &r, 2, 2, 64);
    check_both<T>("shared prefixes", families(), &r, 2, 2, 64);
    check_both<T>("one key head for two", families(), &r, 4, 2, 32);
    check_both<T>("one key head for all", families(), &r, 3, 1, 16);
    Problem p = {};
    add(&p, 0, 200);
    check_both<T>("long rows", p, &r, 1, 1, 128);
}

/* Prefixes that end near the borders of tiles and of a warp's rows. */
template <typename T> static void test_borders(void **) {
    Random r = random_start(29, sizeof(T));
    Problem p = {};
    add(&p, 0, 67);
    for (int prefix : {15, 16, 17, 29, 30, 31, 32, 33, 47, 61, 62, 63, 64, 65, 66}) add(&p, 0, 3, 0, prefix);
    for (int D : {64, 128}) {
        fill<T>(&p, &r, 1, 1, D);
        for (const Segment &s :
             p.segments) /* only a segment's last row may see this key: any other row that sees it fails */
            for (int d = 0; d < D; d++) p.v[(size_t)((s.start + s.len - 1) * D + d)] *= 64;
        check<T>("borders", p, true);
    }
}
static void test_float_borders(void **s) { test_borders<float>(s); }
static void test_bf16_borders(void **s) { test_borders<bf16>(s); }

/* Long segments are processed in strips of 128 rows: the same bits as in strips of 64. */
template <bool EXTRAS> static void long_strips(int window, float cap) {
    Random r = random_start(30, 0);
    Problem p = {};
    p.window = window;
    p.cap = cap;
    add(&p, 1, 300);
    add(&p, 2, 257, 30, 100);
    fill<bf16>(&p, &r, 2, 1, 64);
    assert_true(p.rows >= ATTENTION_LONG * (int)p.segments.size());
    check<bf16>("long segments", p, false);
    Results got[2];
    for (int m = 0; m < 2; m++) {
        Attention a = {};
        std::vector<int32_t> words;
        for (const Segment &s : p.segments)
            for (int32_t word : {s.start, s.len, s.prefix_start, s.prefix_len, s.key_start, s.past})
                words.push_back(word);
        bf16 *out = device_numbers<bf16>(Numbers(p.q.size()));
        a.rows = p.rows;
        a.segments = 2;
        a.heads = 2;
        a.kv_heads = 1;
        a.head_size = 64;
        a.scale = 0.125f;
        a.segment = (const Ints *)device_indices(words);
        a.q = (Acts *)device_numbers<bf16>(p.q);
        a.k = (Acts *)device_numbers<bf16>(p.k);
        a.v = (Acts *)device_numbers<bf16>(p.v);
        a.q_stride = 128;
        a.kv_stride = 64;
        a.out = (Acts *)out;
        a.window = window;
        a.cap = cap;
        if (m) mma_forward<64, 2, EXTRAS>(D, &a);
        else mma_forward<64, 1, EXTRAS>(D, &a);
        got[m].out = fetch(out, p.q.size());
    }
    assert_true(same_bits(got[0].out, got[1].out));
}
static void test_long_strips(void **) {
    long_strips<false>(0, 0);
    for (int window : {1, 50, 170, 1000}) long_strips<true>(window, 0);
    long_strips<true>(70, 2);
}

template <typename T> static void test_head_sizes(void **) {
    Random r = random_start(22, sizeof(T));
    Problem p = {};
    add(&p, 0, 41);
    add(&p, 0, 30, 0, 41);
    add(&p, 1, 70);
    for (int D : {8, 40, 96, 112, 128})
        if (sizeof(T) == 2 || D == 40 || D == 128) check_both<T>("head size", p, &r, 2, 1, D);
    Problem odd = {};
    add(&odd, 0, 35);
    add(&odd, 2, 10, 5, 20);
    for (int D : {1, 20, 33, 100, 132, 256})
        if (sizeof(T) == 4 || D == 20 || D == 100) check_both<T>("odd head size", odd, &r, 2, 1, D);
}

static void test_float_shapes(void **s) { test_shapes<float>(s); }
static void test_bf16_shapes(void **s) { test_shapes<bf16>(s); }
static void test_float_head_sizes(void **s) { test_head_sizes<float>(s); }
static void test_bf16_head_sizes(void **s) { test_head_sizes<bf16>(s); }

/* Windows that end within a prefix, at its border and within the segment, and caps that bend most scores. */
template <typename T> static void windows_and_caps() {
    Random r = random_start(34, sizeof(T));
    for (int window : {0, 1, 2, 16, 33, 64, 65, 90, 500})
        for (float cap : {0.0f, 1.0f}) {
            if (window == 0 && cap == 0) continue;
            Problem p = window % 2 ? families() : ragged();
            p.window = window;
            p.cap = cap;
            check_both<T>("window and cap", p, &r, 4, 2, window % 3 ? 32 : 64);
        }
    for (int D : {20, 96, 128, 200}) { /* all sizes of kernels */
        Problem p = families();
        p.window = 37;
        p.cap = 1.5f;
        check_both<T>("window and cap", p, &r, 2, 1, D);
    }
}
static void test_float_windows(void **) { windows_and_caps<float>(); }
static void test_bf16_windows(void **) { windows_and_caps<bf16>(); }

/* Tiles outside the windows of all rows of a strip are not read: NaN in them changes no bit of other rows. */
template <typename T> static void skipped(int D) {
    enum { ROWS = 400, NEAR = 64, FAR = 256 };
    Random r = random_start(35, sizeof(T));
    Problem p = {}, q;
    add(&p, 0, ROWS);
    p.window = 20;
    fill<T>(&p, &r, 1, 1, D);
    q = p;
    const Results want = run<T>(p, true);
    for (size_t i = 0; i < (size_t)(NEAR * D); i++) p.k[i] = p.v[i] = NAN;
    for (size_t i = (size_t)(FAR + NEAR) * D; i < q.q.size(); i++) q.q[i] = q.dout[i] = NAN;
    const Results late = run<T>(p, true), early = run<T>(q, true);
    const size_t from = (size_t)(2 * NEAR * D), to = (size_t)(FAR * D);
    for (size_t i = from; i < want.out.size(); i++) assert_true(late.out[i] == want.out[i] && late.dq[i] == want.dq[i]);
    for (size_t i = 0; i < to; i++) assert_true(early.dk[i] == want.dk[i] && early.dv[i] == want.dv[i]);
    assert_true(isnan(late.out[0]) && isnan(early.dk[q.q.size() - 1])); /* what sees the NaN shows it */
}
static void test_skipped_tiles(void **) {
    skipped<float>(64);
    skipped<bf16>(64);
    skipped<bf16>(128);
    skipped<bf16>(20);
}

/* Scores far apart: a nearly one-hot softmax, and no overflow. */
template <typename T> static void extremes() {
    Random r = random_start(23, sizeof(T));
    Problem p = families();
    fill<T>(&p, &r, 2, 2, 32, 8);
    check<T>("large scores", p, true);
    std::fill(p.q.begin(), p.q.end(), 0.0f);
    check<T>("equal scores", p, true);
}
static void test_extremes(void **) {
    extremes<float>();
    extremes<bf16>();
}

/* Queries over a cache: prefill after a past, decode with and without a shared prefix, more keys than fit in one
 * part. */
template <typename T> static void cached() {
    Random r = random_start(24, sizeof(T));
    Problem prefill = {};
    prefill.cache = true;
    prefill.key_rows = 400;
    prefill.segments = {{0, 37, 0, 0, 10, 50}, {37, 1, 200, 90, 110, 3}, {38, 70, 200, 90, 300, 0}};
    prefill.rows = 110;
    fill<T>(&prefill, &r, 4, 2, 64);
    check<T>("prefill after a past", prefill, false);
    prefill.window = 60;
    prefill.cap = 1;
    check<T>("prefill after a past", prefill, false);
    for (int D : {16, 64, 128, 20}) {
        Problem p = {};
        p.cache = true;
        p.key_rows = 900;
        p.segments = {{1, 1, 0, 0, 0, 0},     {2, 1, 5, 300, 310, 17}, {3, 1, 5, 300, 350, 0},
                      {4, 1, 0, 0, 400, 255}, {5, 1, 0, 0, 650, 127},  {6, 2, 0, 0, 780, 100}};
        p.rows = 9;
        fill<T>(&p, &r, 4, D == 64 ? 4 : 2, D);
        assert_true(p.rows <= ATTENTION_FEW * (int)p.segments.size());
        check<T>("decode", p, false);
        for (int window : {1, 100, 310, 400}) { /* some rows see them all */
            p.window = window;
            p.cap = window == 1 || window == 310 ? 0 : 1.5f;
            check<T>("decode", p, false);
        }
        p.window = 0;
        check<T>("decode", p, false);
    }
    Problem one = {};
    one.cache = true;
    one.key_rows = 4000;
    one.segments = {{0, 1, 100, 1500, 1700, 2000}};
    one.rows = 1;
    fill<T>(&one, &r, 6, 1, 64);
    check<T>("one row, many keys, six heads of one key head", one, false);
    one.window = 2100;
    check<T>("one row, many keys, six heads of one key head", one, false);
}
static void test_cache(void **) {
    cached<float>();
    cached<bf16>();
}

/* A row's result does not depend on the other segments of its batch, nor on its position in the batch. */
static void batch_mates(int window) {
    Random r = random_start(25, 0);
    Problem p = {};
    p.window = window;
    p.cache = true;
    p.key_rows = 700;
    p.segments = {{0, 1, 0, 0, 0, 400}, {1, 1, 0, 0, 500, 60}, {2, 1, 0, 0, 600, 3}};
    p.rows = 3;
    fill<bf16>(&p, &r, 2, 2, 64);
    const Results all = run<bf16>(p, false);
    Problem alone = p;
    alone.segments = {{0, 1, 0, 0, 500, 60}};
    alone.rows = 1;
    alone.q = Numbers(p.q.begin() + 128, p.q.begin() + 256);
    assert_true(same_bits(run<bf16>(alone, false).out, Numbers(all.out.begin() + 128, all.out.begin() + 256)));
}

static void test_batch_mates(void **) {
    batch_mates(0);
    batch_mates(50);
}

/* Repeated runs give the same bits, with or without lse. */
static void repeatable(int window, float cap) {
    Random r = random_start(26, 0);
    Problem p = families();
    p.window = window;
    p.cap = cap;
    fill<bf16>(&p, &r, 4, 2, 64);
    const Results first = run<bf16>(p, true), again = run<bf16>(p, true), bare = run<bf16>(p, false, false);
    assert_true(same_bits(first.out, again.out) && same_bits(first.lse, again.lse) && same_bits(first.dq, again.dq));
    assert_true(same_bits(first.dk, again.dk) && same_bits(first.dv, again.dv) && same_bits(first.out, bare.out));
    for (float x : bare.lse) assert_true(isnan(x)); /* untouched */
}
static void test_repeatable(void **) {
    repeatable(0, 0);
    repeatable(45, 1);
}

template <typename T> static void stored(int stride, int KC) {
    Random r = random_start(27, 0);
    enum { N = 37, SLOTS = 50 };
    Numbers k = normals(&r, (size_t)N * stride, 1), cache = normals(&r, (size_t)SLOTS * KC, 1);
    round_to<T>(k);
    round_to<T>(cache);
    Indices slot(N);
    for (int i = 0; i < N; i++)
        slot[(size_t)i] = i % 5 == 3 ? -1 : (i * 7 + 2) % SLOTS; /* 7 and 50 are coprime: all slots differ */
    const int column = stride - KC;
    T *x = device_numbers<T>(k), *cache_k = device_numbers<T>(cache), *cache_v = device_numbers<T>(cache);
    cuda_kv_store<T>(D, (Acts *)cache_k, (Acts *)cache_v, (Acts *)x, (Acts *)(x + column), stride,
                     (Ints *)device_indices(slot), N, KC);
    const Numbers got_k = fetch(cache_k, (size_t)SLOTS * KC), got_v = fetch(cache_v, (size_t)SLOTS * KC);
    Numbers want_k = cache, want_v = cache;
    for (int i = 0; i < N; i++) {
        if (slot[(size_t)i] < 0) continue;
        for (int c = 0; c < KC; c++) {
            want_k[(size_t)(slot[(size_t)i] * KC + c)] = k[(size_t)(i * stride + c)];
            want_v[(size_t)(slot[(size_t)i] * KC + c)] = k[(size_t)(i * stride + column + c)];
        }
    }
    assert_true(same_bits(got_k, want_k) && same_bits(got_v, want_v));
}
static void test_kv_store(void **) {
    stored<float>(96, 32);
    stored<bf16>(96, 32);
    stored<float>(21, 7);
    stored<bf16>(21, 7);
    stored<bf16>(40, 16);
}

/* Empty problems, and problems that are refused. */
static void test_edges(void **) {
    Attention a = {};
    a.heads = a.kv_heads = 1;
    a.head_size = 16;
    a.q_stride = a.kv_stride = 16;
    cuda_attention_forward<bf16>(D, &a);
    cuda_attention_backward<bf16>(D, &a);
    cuda_kv_store<bf16>(D, NULL, NULL, NULL, NULL, 16, NULL, 0, 16);
    Problem nothing = {};
    Random r = random_start(28, 0);
    nothing.rows = 5;
    fill<bf16>(&nothing, &r, 2, 2, 16);
    check<bf16>("rows, but no segments", nothing, true);
    device_wait();
    a.rows = 1;
    a.segments = 1;
    a.heads = 3;
    a.kv_heads = 2;
    cuda_attention_forward<bf16>(D, &a);
    assert_true(D->failed && strstr(D->error.text, "3 heads"));
    D->failed = false;
    a.heads = 2;
    a.head_size = 257;
    cuda_attention_backward<float>(D, &a);
    assert_true(D->failed && strstr(D->error.text, "257"));
    D->failed = false;
}

int main() {
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(test_float_shapes),    KERNEL_TEST(test_bf16_shapes),   KERNEL_TEST(test_float_head_sizes),
        KERNEL_TEST(test_bf16_head_sizes), KERNEL_TEST(test_extremes),      KERNEL_TEST(test_cache),
        KERNEL_TEST(test_batch_mates),     KERNEL_TEST(test_repeatable),    KERNEL_TEST(test_kv_store),
        KERNEL_TEST(test_edges),           KERNEL_TEST(test_float_borders), KERNEL_TEST(test_bf16_borders),
        KERNEL_TEST(test_long_strips),     KERNEL_TEST(test_float_windows), KERNEL_TEST(test_bf16_windows),
        KERNEL_TEST(test_skipped_tiles),
    };
    return kernels_run(tests, 2);
}
