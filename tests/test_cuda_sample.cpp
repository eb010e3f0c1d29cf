/* test_cuda_sample.cpp - sampling on the GPU against the rule of backend.h in float64, token by token. */
#include "../llmc/base/random.h"   /* Random, random_start, random_below, random_next, ... */
#include "../llmc/cuda/common.cuh" /* cuda_scratch_begin, bf16 */
#include "../llmc/cuda/sample.cuh" /* cuda_sample, sample_launch */
#include "../llmc/model/backend.h" /* Draw, Ints, Floats, Acts, ... */
#include "kernels.h"               /* Indices, D, device_indices, Doubles, ... */
#include "sampling.h"              /* How, HOW */
#include <algorithm>

/* Rows of logits with their random streams and histories. */
struct Rows {
    int R, V, Vp, history_stride;
    Numbers z;
    Indices stream, index, history, history_len;
    uint64_t seed;
};

static Rows rows_of(Random *r, int R, int V, int Vp, double amplitude) {
    Rows p = {R,
              V,
              Vp,
              9,
              normals(r, (size_t)R * Vp, amplitude),
              Indices((size_t)(2 * R)),
              Indices((size_t)R),
              Indices((size_t)(9 * R)),
              Indices((size_t)R),
              random_next(r)};
    for (int32_t &x : p.stream) x = (int32_t)random_next(r);
    for (int32_t &x : p.index) x = (int32_t)random_below(r, 1000);
    for (int32_t &x : p.history) x = (int32_t)random_below(r, (uint64_t)V);
    for (int i = 0; i < R; i++) {
        p.history_len[(size_t)i] = (int32_t)random_below(r, 10);
        p.history[(size_t)(9 * i + 1)] = p.history[(size_t)(9 * i)]; /* seen twice, penalised once */
        for (int v = V; v < Vp; v++) p.z[(size_t)i * Vp + v] = 1000; /* padding must have no effect */
        if (i % 4 == 3)                                              /* some rows have ties: logits in steps of 1/2 */
            for (int v = 0; v < V; v++) p.z[(size_t)i * Vp + v] = roundf(2 * p.z[(size_t)i * Vp + v]) / 2;
    }
    return p;
}

struct Drawn {
    Indices token;
    Numbers logp, kept_logp;
};

static Draw draw_of(const Rows &p, const How &how) {
    Draw a = {};
    a.rows = p.R;
    a.vocab = p.V;
    a.padded_vocab = p.Vp;
    a.temperature = how.temperature;
    a.top_p = how.top_p;
    a.min_p = how.min_p;
    a.repetition_penalty = how.penalty;
    a.top_k = how.top_k;
    a.seed = p.seed;
    a.stream = (const Ints *)device_indices(p.stream);
    a.index = (const Ints *)device_indices(p.index);
    if (how.penalty != 1) {
        a.history = (const Ints *)device_indices(p.history);
        a.history_len = (const Ints *)device_indices(p.history_len);
        a.history_stride = p.history_stride;
    }
    a.token = (Ints *)device_indices(Indices((size_t)p.R, -1));
    a.logp = (Floats *)device_garbage<float>((size_t)p.R);
    a.kept_logp = (Floats *)device_garbage<float>((size_t)p.R);
    return a;
}

static Drawn drawn(const Draw &a) {
    const size_t R = (size_t)a.rows;
    return Drawn{fetch_indices((int32_t *)a.token, R), fetch((float *)a.logp, R), fetch((float *)a.kept_logp, R)};
}

static Drawn draw(const Rows &p, const How &how) {
    const Draw a = draw_of(p, how);
    sample_launch(D, &a, 0, p.R, device_numbers<float>(p.z));
    return drawn(a);
}

/* ==== The rule, in float64 ==== */

/* Probabilities of the kept tokens, 0 for the others. Returns the margin of the closest decision. */
static double keep(const How &how, const Doubles &y, Doubles *probability) {
    const size_t V = y.size();
    const double max = *std::max_element(y.begin(), y.end());
    Doubles sorted = y;
    std::sort(sorted.begin(), sorted.end(), std::greater<double>());
    double least = -INFINITY, margin = 1, sum = 0;
    if (how.top_k > 0 && (size_t)how.top_k < V) least = sorted[(size_t)how.top_k - 1];
    if (how.top_p < 1) {
        double all = 0, above = 0;
        for (double x : y) all += x >= least ? exp(x - max) : 0;
        for (size_t i = 0; i < V && sorted[i] >= least;) { /* equally likely tokens are kept or dropped together */
            size_t end = i;
            double mass = 0;
            for (; end < V && sorted[end] == sorted[i]; end++) mass += exp(sorted[end] - max) / all;
            if (i > 0) margin = std::min(margin, fabs(above - (double)how.top_p));
            if (i > 0 && above >= (double)how.top_p) {
                least = std::nextafter(sorted[i], INFINITY);
                break;
            }
            above += mass;
            i = end;
        }
    }
    if (how.min_p > 0) {
        const double cut = max + log((double)how.min_p);
        for (double x : y) margin = x == max ? margin : std::min(margin, fabs(x - cut));
        least = std::max(least, cut);
    }
    probability->assign(V, 0);
    for (size_t v = 0; v < V; v++)
        if (y[v] >= least || y[v] == max) sum += (*probability)[v] = exp(y[v] - max);
    for (double &x : *probability) x /= sum;
    return margin;
}

/* Checks the token that each row draws. Returns the number of rows for which rounding may decide. */
static int check_draw(const Rows &p, const How &how, const Drawn &got) {
    int unclear = 0;
    for (int i = 0; i < p.R; i++) {
        Doubles z((size_t)p.V), y, probability;
        double sum = 0, running = 0, margin = 1, most;
        const double t = how.temperature > 0 ? how.temperature : 1;
        int expected = -1;
        for (int v = 0; v < p.V; v++) z[(size_t)v] = p.z[(size_t)i * p.Vp + v];
        y = z;
        if (how.penalty != 1) {
            for (int k = 0; k < p.history_len[(size_t)i]; k++) {
                const size_t v = (size_t)p.history[(size_t)(i * p.history_stride + k)];
                y[v] = z[v] > 0 ? z[v] / how.penalty : z[v] * how.penalty;
            }
        }
        for (double &x : y) x /= t;
        for (double &x : z) x /= t;
        most = *std::max_element(z.begin(), z.end());
        for (double x : z) sum += exp(x - most);
        if (how.temperature == 0) expected = (int)(std::max_element(y.begin(), y.end()) - y.begin());
        else {
            margin = keep(how, y, &probability);
            const uint64_t s =
                (uint64_t)(uint32_t)p.stream[(size_t)(2 * i + 1)] << 32 | (uint32_t)p.stream[(size_t)(2 * i)];
            const double u = random_uniform(p.seed, s, (uint64_t)p.index[(size_t)i]);
            for (int v = 0; v < p.V; v++) {
                running += probability[(size_t)v];
                if (probability[(size_t)v] > 0) margin = std::min(margin, fabs(running - u));
                if (running > u && expected < 0) expected = v;
            }
        }
        const size_t token = (size_t)got.token[(size_t)i];
        assert_true(got.token[(size_t)i] >= 0 && token < (size_t)p.V);
        if (margin < 1e-5) {
            unclear++;
            continue;
        }
        if (got.token[(size_t)i] != expected)
            fail_msg(
                "row %d of %d logits draws %d, expected %d (temperature %g, top-k %d, top-p %g, min-p %g, penalty %g)",
                i, p.V, got.token[(size_t)i], expected, how.temperature, how.top_k, how.top_p, how.min_p, how.penalty);
        const double logp = z[token] - most - log(sum);
        assert_true(fabs(got.logp[(size_t)i] - logp) < 1e-5 * (1 + fabs(logp)));
        const double kept = how.temperature == 0 ? 0 : log(probability[token]);
        assert_true(fabs(got.kept_logp[(size_t)i] - kept) < 1e-5 * (1 + fabs(kept)));
    }
    return unclear;
}

/* ==== Tests ==== */

static void test_rule(void **) {
    Random r = random_start(41, 0);
    int unclear = 0, rows = 0;
    for (const How &h : HOW) {
        const Rows p = rows_of(&r, 8, 257, 384, 2);
        unclear += check_draw(p, h, draw(p, h));
        rows += p.R;
    }
    assert_true(unclear < rows / 8);
}

/* A vocabulary of one token, one that is not a multiple of anything, one with several tiles and odd rows, and a wide
 * one. */
static void test_sizes(void **) {
    Random r = random_start(42, 0);
    static const int size[][2] = {{1, 8}, {2, 16}, {127, 127}, {129, 130}, {4097, 4099}, {20000, 20096}};
    for (const auto &s : size)
        for (const How &h : {How{1, 1, 0, 1, 0}, How{0.9f, 0.95f, 0.001f, 1.2f, 100}}) {
            const Rows p = rows_of(&r, 2, s[0], s[1], 3);
            check_draw(p, h, draw(p, h));
        }
}

/* Extremes: all logits equal, minus infinity, far below the maximum, far apart, and a NaN in the row. */
static void test_extremes(void **) {
    Random r = random_start(43, 0);
    Rows p = rows_of(&r, 4, 300, 320, 1);
    for (int v = 0; v < p.V; v++) {
        p.z[(size_t)v] = -50;
        p.z[(size_t)(p.Vp + v)] = v % 3 ? -INFINITY : 1;
        p.z[(size_t)(2 * p.Vp + v)] = v == 200 ? 1e4f : -1e4f;
        p.z[(size_t)(3 * p.Vp + v)] = -1e-3f * (float)v;
    }
    for (const How &h : {How{1, 1, 0, 1, 0}, How{1, 1, 0, 1, 7}, How{1, 0.5f, 0, 1, 0}, How{1, 1, 0.5f, 1, 0},
                         How{0, 1, 0, 1, 0}, How{0.01f, 0.9f, 0, 1, 0}})
        check_draw(p, h, draw(p, h));
    p.z[5] = NAN;
    for (const How &h : {How{1, 0.9f, 0, 1, 20}, How{0, 1, 0, 1, 0}, How{1, 0.9f, 0.1f, 1.5f, 0}}) {
        const Drawn got = draw(p, h);
        assert_true(got.token[0] >= 0 && got.token[0] < p.V && isnan(got.logp[0]));
    }
}

/* The whole operation from the hidden states on. A row draws the same token alone and in a batch. */
template <typename T> static void whole(int R, int C, int V, int Vp, float cap) {
    Random r = random_start(45, 0);
    Rows p = rows_of(&r, R, V, Vp, 1);
    const How how = {0.8f, 0.9f, 0, 1.1f, 30};
    Numbers h = normals(&r, (size_t)(R + 15) / 16 * 16 * C, 1), wte = normals(&r, (size_t)Vp * C, 0.5);
    round_to<T>(h);
    round_to<T>(wte);
    for (int i = 0; i < R; i++)
        for (int v = 0; v < V; v++) {
            double sum = 0;
            for (int c = 0; c < C; c++) sum += (double)h[(size_t)(i * C + c)] * wte[(size_t)(v * C + c)];
            p.z[(size_t)i * Vp + v] = (float)(cap > 0 ? cap * tanh(sum / cap) : sum);
        }
    Draw a = draw_of(p, how);
    a.channels = C;
    a.cap = cap;
    a.h = (const Acts *)device_numbers<T>(h);
    a.weight = (const Weights *)device_numbers<T>(wte);
    cuda_scratch_begin(D);
    cuda_sample<T>(D, &a);
    const Drawn all = drawn(a);
    assert_true(check_draw(p, how, all) < R / 2);
    a.rows = 1;
    cuda_scratch_begin(D);
    cuda_sample<T>(D, &a);
    assert_int_equal(drawn(a).token[0], all.token[0]);
    a.rows = 0;
    cuda_sample<T>(D, &a);
}
static void test_sample(void **) {
    for (float cap : {0.0f, 3.0f}) {
        whole<float>(5, 24, 257, 384, cap);
        whole<bf16>(17, 24, 257, 384, cap);
    }
}

int main() {
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(test_rule),
        KERNEL_TEST(test_sizes),
        KERNEL_TEST(test_extremes),
        KERNEL_TEST(test_sample),
    };
    return kernels_run(tests, 2);
}
