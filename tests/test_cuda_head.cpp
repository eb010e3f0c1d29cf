/* test_cuda_head.cpp - the language-model head and the value head on the GPU against the formulas of backend.h in
 * float64. */
#include "../llmc/base/random.h"   /* Random, random_start, random_below */
#include "../llmc/cuda/common.cuh" /* bf16, cuda_scratch_begin */
#include "../llmc/cuda/head.cuh"   /* cuda_head, HEAD_THREADS, cuda_head_chunk_rows, head_kernel, ... */
#include "../llmc/cuda/ptx.cuh"    /* LAUNCH */
#include "../llmc/model/backend.h" /* Floats, Acts, Head, Ints, ... */
#include "kernels.h"               /* device_numbers, fetch, compare, normals, ... */
#include <algorithm>

/* ==== The pass over a chunk of logits ==== */

struct Rows {
    int R, V, Vp;
    float temperature, cap;
    Numbers z, dlogp, dentropy; /* z: before the cap */
    Indices target;
};

static Rows rows_of(Random *r, int R, int V, int Vp, float temperature, double amplitude, float cap = 0) {
    Rows p = {R,
              V,
              Vp,
              temperature,
              cap,
              normals(r, (size_t)R * Vp, amplitude),
              normals(r, (size_t)R, 1),
              normals(r, (size_t)R, 0.5),
              Indices((size_t)R)};
    for (int32_t &t : p.target) t = (int32_t)random_below(r, (uint64_t)V);
    for (int i = 0; i < R; i++) /* padding logits must have no effect */
        for (int v = V; v < Vp; v++) p.z[(size_t)i * Vp + v] = v % 2 ? 1000 : NAN;
    return p;
}

struct RowsWant {
    Doubles logp, entropy, size, dz, dz_size;
    Indices argmax;
};

static RowsWant rows_want(const Rows &p, bool entropy_gradient) {
    RowsWant w;
    for (int i = 0; i < p.R; i++) {
        Doubles z((size_t)p.V), slope((size_t)p.V, 1);
        for (size_t v = 0; v < (size_t)p.V; v++) {
            z[v] = p.z[(size_t)i * p.Vp + v];
            if (p.cap == 0) continue;
            const double bent = tanh(z[v] / p.cap);
            z[v] = p.cap * bent;
            slope[v] = 1 - bent * bent;
        }
        double max = -INFINITY, sum = 0, entropy = 0;
        int argmax = 0;
        for (int v = 0; v < p.V; v++)
            if (z[(size_t)v] > max) {
                max = z[(size_t)v];
                argmax = v;
            }
        for (int v = 0; v < p.V; v++) sum += exp((z[(size_t)v] - max) / p.temperature);
        Doubles logp((size_t)p.V);
        for (int v = 0; v < p.V; v++) {
            logp[(size_t)v] = (z[(size_t)v] - max) / p.temperature - log(sum);
            entropy -= logp[(size_t)v] < -700 ? 0 : exp(logp[(size_t)v]) * logp[(size_t)v];
        }
        const int t = p.target[(size_t)i];
        const double g = p.dlogp[(size_t)i], e = entropy_gradient ? p.dentropy[(size_t)i] : 0;
        w.logp.push_back(logp[(size_t)t]);
        w.entropy.push_back(entropy);
        w.argmax.push_back(argmax);
        w.size.push_back(1 + fabs(logp[(size_t)t]) + entropy + fabs(max) / p.temperature);
        for (int v = 0; v < p.Vp; v++) {
            const double lp = v < p.V ? logp[(size_t)v] : 0, q = v < p.V ? exp(lp) : 0;
            const double change = v < p.V ? slope[(size_t)v] / p.temperature : 0;
            w.dz.push_back((g * ((v == t) - q) - (q > 0 ? e * q * (lp + entropy) : 0)) * change);
            w.dz_size.push_back((fabs(g) * ((v == t) + q * (1 + fabs(lp) / 8)) +
                                 (q > 0 ? fabs(e) * q * (fabs(lp) + entropy) * (1 + fabs(lp) / 8) : 0)) /
                                p.temperature);
        }
    }
    return w;
}

template <typename T> static void rows_launch(const Head &a, int first, const float *z, T *dz) {
    if (a.cap > 0) LAUNCH((head_kernel<T, true>), (unsigned)a.rows, HEAD_THREADS, 0, D->stream, a, first, z, dz);
    else LAUNCH((head_kernel<T, false>), (unsigned)a.rows, HEAD_THREADS, 0, D->stream, a, first, z, dz);
}

template <typename T> static void check_rows(const Rows &p, bool entropy_gradient) {
    const size_t R = (size_t)p.R, count = R * p.Vp;
    const RowsWant want = rows_want(p, entropy_gradient);
    print_message("  %d rows of %d (%d) logits at temperature %g, cap %g, %s\n", p.R, p.V, p.Vp, p.temperature, p.cap,
                  sizeof(T) == 2 ? "bf16" : "float32");
    Head a = {};
    a.rows = p.R;
    a.vocab = p.V;
    a.padded_vocab = p.Vp;
    a.temperature = p.temperature;
    a.cap = p.cap;
    a.target = (const Ints *)device_indices(p.target);
    float *z = device_numbers<float>(p.z), *logp = device_garbage<float>(R), *entropy = device_garbage<float>(R);
    int32_t *argmax = device_indices(Indices(R, -1));
    a.logp = (Floats *)logp;
    T *dz = sizeof(T) == 4 ? (T *)z : device_garbage<T>(count);
    rows_launch<T>(a, 0, z, dz); /* only logp */
    const Numbers bare = fetch(logp, R);
    a.entropy = (Floats *)entropy;
    a.argmax = (Ints *)argmax;
    a.dlogp = (const Floats *)device_numbers<float>(p.dlogp);
    if (entropy_gradient) a.dentropy = (const Floats *)device_numbers<float>(p.dentropy);
    rows_launch<T>(a, 0, z, dz);
    compare("logp", bare, want.logp, want.size, 0x1p-21);
    assert_true(same_bits(bare, fetch(logp, R))); /* other requested results do not change logp */
    compare("entropy", fetch(entropy, R), want.entropy, want.size, 0x1p-20);
    assert_true(fetch_indices(argmax, R) == want.argmax);
    compare("dz", fetch(dz, count), want.dz, want.dz_size, sizeof(T) == 2 ? 0x1p-8 : 0x1p-19);
}

static void test_rows(void **) {
    Random r = random_start(31, 0);
    static const struct {
        int R, V, Vp;
        float temperature;
        double amplitude;
    } shapes[] = {{1, 257, 384, 1, 1},    {3, 5, 128, 2, 1},     {2, 1, 128, 1, 1},
                  {2, 128, 128, 0.7f, 3}, {2, 5003, 5120, 1, 4}, {2, 300, 304, 0.1f, 2},
                  {2, 99, 101, 1.3f, 1},  {3, 257, 384, 1, 200}, {1, 9000, 9001, 0.9f, 1}};
    for (const auto &s : shapes) {
        for (float cap : {0.0f, s.amplitude > 100 ? 300.0f : 2.5f}) { /* not so small that logits become equal */
            const Rows p = rows_of(&r, s.R, s.V, s.Vp, s.temperature, s.amplitude, cap);
            check_rows<float>(p, true);
            check_rows<bf16>(p, true);
        }
    }
    check_rows<bf16>(rows_of(&r, 3, 257, 384, 1, 1), false);
}

/* Equal logits, logits of minus infinity, NaN. */
static void test_row_extremes(void **) {
    const int V = 700, R = 5;
    Numbers z((size_t)R * V, 1);
    z[V + 300] = z[V + 20] = z[V + 12] = 5;
    for (int v = 0; v < V; v++) z[2 * V + v] = v == 77 ? 3 : -INFINITY;
    for (int v = 0; v < V; v++) z[3 * V + v] = NAN;
    for (int v = 0; v < V; v++) z[4 * V + v] = v == 20 ? NAN : v == 33 ? 2 : 1;
    Head a = {};
    a.rows = R;
    a.vocab = a.padded_vocab = V;
    a.temperature = 1;
    a.target = (const Ints *)device_indices({3, 300, 77, 0, 33});
    float *logp = device_garbage<float>(R), *entropy = device_garbage<float>(R), *logits = device_numbers<float>(z);
    int32_t *argmax = device_indices(Indices(R, -1));
    a.logp = (Floats *)logp;
    a.entropy = (Floats *)entropy;
    a.argmax = (Ints *)argmax;
    a.dlogp = a.dentropy = (const Floats *)device_numbers<float>(Numbers(R, 1));
    bf16 *dz = device_garbage<bf16>((size_t)R * V);
    rows_launch<bf16>(a, 0, logits, dz);
    const Numbers lp = fetch(logp, R), en = fetch(entropy, R), g = fetch(dz, (size_t)R * V);
    assert_true(fabs(lp[0] + log((double)V)) < 1e-5 && fabs(en[0] - log((double)V)) < 1e-5);
    assert_true(lp[2] == 0 && en[2] == 0);
    assert_true(isnan(lp[3]) && isnan(lp[4]) && isnan(en[3]) && isnan(en[4]));
    assert_true(fetch_indices(argmax, R) ==
                (Indices{0, 12, 77, 0, 33})); /* the first of several; NaN is never the maximum */
    for (int i = 0; i < 3 * V; i++) assert_true(isfinite(g[(size_t)i]));
}

/* ==== The whole head ==== */

template <typename T>
static void whole_head(int R, int C, int V, int Vp, float temperature, bool entropy_gradient, float cap = 0) {
    Random r = random_start(32, (uint64_t)(R * 1000 + C));
    const size_t table = (size_t)Vp * C, used = (size_t)V * C;
    Numbers h = normals(&r, (size_t)(R + 15) / 16 * 16 * C, 1), wte = normals(&r, table, 0.3);
    Numbers dwte = normals(&r, table, 1);
    round_to<T>(h);
    round_to<T>(wte);
    Rows p = rows_of(&r, R, V, Vp, temperature, 1, cap);
    Doubles logits((size_t)R * V), logit_size((size_t)R * V);
    for (int i = 0; i < R; i++)
        for (int v = 0; v < V; v++) {
            double sum = 0, size = 0;
            for (int c = 0; c < C; c++) {
                const double term = (double)h[(size_t)(i * C + c)] * wte[(size_t)(v * C + c)];
                sum += term;
                size += fabs(term);
            }
            logits[(size_t)(i * V + v)] = cap > 0 ? cap * tanh(sum / cap) : sum;
            logit_size[(size_t)(i * V + v)] = size;
            p.z[(size_t)i * Vp + v] = (float)sum;
        }
    RowsWant want = rows_want(p, entropy_gradient);
    Doubles dh((size_t)R * C), dh_size((size_t)R * C), dw(table), dw_size(table);
    for (size_t i = 0; i < table; i++) {
        dw[i] = dwte[i];
        dw_size[i] = fabs(dwte[i]);
    }
    for (int i = 0; i < R; i++)
        for (int v = 0; v < V; v++)
            for (int c = 0; c < C; c++) {
                const size_t at = (size_t)i * Vp + v, x = (size_t)(i * C + c), w = (size_t)(v * C + c);
                dh[x] += want.dz[at] * wte[w];
                dh_size[x] += want.dz_size[at] * fabs(wte[w]);
                dw[w] += want.dz[at] * h[x];
                dw_size[w] += want.dz_size[at] * fabs(h[x]);
            }
    for (double &s : want.size) s += C;
    Head a = {};
    float *logp = device_garbage<float>((size_t)R), *grad = device_numbers<float>(dwte);
    T *out = device_garbage<T>(h.size()); /* rows rounded up to a multiple of ROW_ALIGN */
    a.rows = R;
    a.channels = C;
    a.vocab = V;
    a.padded_vocab = Vp;
    a.temperature = temperature;
    a.cap = cap;
    a.h = (const Acts *)device_numbers<T>(h);
    a.weight = (const Weights *)device_numbers<T>(wte);
    a.target = (const Ints *)device_indices(p.target);
    a.logp = (Floats *)logp;
    a.dh = (Acts *)out;
    a.dweight = (Floats *)grad;
    a.dlogp = (const Floats *)device_numbers<float>(p.dlogp);
    if (entropy_gradient) a.dentropy = (const Floats *)device_numbers<float>(p.dentropy);
    cuda_scratch_begin(D);
    cuda_head<T>(D, &a);
    const double tolerance = sizeof(T) == 2 ? 0x1p-7 : 0x1p-16;
    compare("logp", fetch(logp, (size_t)R), want.logp, want.size, 0x1p-19);
    compare("dh", fetch(out, (size_t)R * C), dh, dh_size, tolerance);
    const Numbers got = fetch(grad, table);
    compare("dwte", got, dw, dw_size, tolerance);
    for (size_t i = used; i < table; i++) assert_true(got[i] == dwte[i]); /* padding gets no gradient */
    a.dweight = NULL;                                                     /* no gradient of wte requested */
    cuda_head<T>(D, &a);
    assert_true(same_bits(got, fetch(grad, table)));
    float *all = device_garbage<float>((size_t)R * V);
    cuda_scratch_begin(D);
    cuda_logits<T>(D, (Floats *)all, a.h, a.weight, cap, R, C, V, Vp);
    compare("logits", fetch(all, (size_t)R * V), logits, logit_size, 0x1p-20);
}

static void test_head(void **) {
    whole_head<float>(19, 24, 257, 384, 0.7f, true);
    whole_head<bf16>(19, 24, 257, 384, 0.7f, true);
    whole_head<float>(19, 24, 257, 384, 0.7f, true, 2);
    whole_head<bf16>(19, 24, 257, 384, 0.7f, true, 2);
    whole_head<bf16>(1, 8, 5, 128, 1, false);
    whole_head<float>(33, 4, 130, 256, 1, true);
    Head none = {};
    cuda_head<bf16>(D, &none);
}

/* More rows than fit in one chunk: the padded vocabulary is so wide that 40 rows are 3 chunks. Also the rule for
 * chunks. */
static void test_chunks(void **) {
    const int R = 40, VP = 1 << 22;
    assert_int_equal(cuda_head_chunk_rows(R, VP), 16);
    for (int rows = 1; rows < 100000; rows += 1 + rows / 7)
        for (int vp = 128; vp <= 1 << 23; vp *= 2) {
            const int chunk = cuda_head_chunk_rows(rows, vp);
            assert_true(chunk > 0 && chunk % ROW_ALIGN == 0);
            assert_true(chunk == ROW_ALIGN || (size_t)chunk * (size_t)vp <= CUDA_HEAD_CHUNK);
            assert_true(chunk < rows + ROW_ALIGN);
        }
}

/* ==== Value head ==== */

template <typename T> static void value(int R, int C) {
    Random r = random_start(33, (uint64_t)(R * 1000 + C));
    const size_t n = (size_t)R * C;
    Numbers h = normals(&r, n, 1), w = normals(&r, (size_t)C, 1), b = {0.75f}, dvalue = normals(&r, (size_t)R, 1);
    Numbers dh = normals(&r, n, 1), dw = normals(&r, (size_t)C, 1), db = {0.5f};
    round_to<T>(h);
    round_to<T>(w);
    round_to<T>(dh);
    Doubles v((size_t)R), v_size((size_t)R), x(n), x_size(n), y((size_t)C), y_size((size_t)C), z = {0.5},
                                                                                               z_size = {0.5};
    for (size_t c = 0; c < (size_t)C; c++) {
        y[c] = dw[c];
        y_size[c] = fabs(dw[c]);
    }
    for (size_t i = 0; i < (size_t)R; i++) {
        v[i] = b[0];
        v_size[i] = fabs(b[0]);
        z[0] += dvalue[i];
        z_size[0] += fabs(dvalue[i]);
        for (size_t c = 0; c < (size_t)C; c++) {
            const size_t at = i * C + c;
            v[i] += (double)h[at] * w[c];
            v_size[i] += fabs((double)h[at] * w[c]);
            x[at] = dh[at] + (double)dvalue[i] * w[c];
            x_size[at] = fabs(dh[at]) + fabs((double)dvalue[i] * w[c]);
            y[c] += (double)dvalue[i] * h[at];
            y_size[c] += fabs((double)dvalue[i] * h[at]);
        }
    }
    T *dev_h = device_numbers<T>(h), *dev_w = device_numbers<T>(w), *dev_dh = device_numbers<T>(dh);
    float *out = device_garbage<float>((size_t)R), *dev_dw = device_numbers<float>(dw),
          *dev_db = device_numbers<float>(db);
    cuda_value_forward<T>(D, (Floats *)out, (Acts *)dev_h, (Weights *)dev_w, (Weights *)device_numbers<T>(b), R, C);
    cuda_value_backward<T>(D, (Acts *)dev_dh, (Floats *)dev_dw, (Floats *)dev_db,
                           (Floats *)device_numbers<float>(dvalue), (Acts *)dev_h, (Weights *)dev_w, R, C);
    compare("value", fetch(out, (size_t)R), v, v_size, 0x1p-20);
    compare("dh", fetch(dev_dh, n), x, x_size, sizeof(T) == 2 ? 0x1p-8 : 0x1p-22);
    compare("dw", fetch(dev_dw, (size_t)C), y, y_size, 0x1p-20);
    compare("db", fetch(dev_db, 1), z, z_size, 0x1p-20);
}

static void test_value(void **) {
    for (int R : {1, 7, 33, 300})
        for (int C : {8, 24, 100, 33}) {
            value<float>(R, C);
            value<bf16>(R, C);
        }
}

int main() {
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(test_rows),   KERNEL_TEST(test_row_extremes), KERNEL_TEST(test_head),
        KERNEL_TEST(test_chunks), KERNEL_TEST(test_value),
    };
    return kernels_run(tests, 4);
}
