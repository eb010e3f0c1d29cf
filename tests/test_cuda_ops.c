/* test_cuda_ops.c - the CUDA backend's operations (norm, elementwise, matmul, AdamW, memory, graphs) against their
 * formulas in float64.
 *
 * They run in float32 and bf16 storage, without a GPU in several orders of threads and blocks. Attention, the head and
 * sampling have their own files. */
#include "../llmc/base/error.h"      /* Error, xmalloc */
#include "../llmc/base/random.h"     /* Random, random_start, random_normal, RANDOM_NOISE, ... */
#include "../llmc/model/backend.h"   /* Acts, Floats, Weights, NORM_RMS, ... */
#include "../llmc/model/quantized.h" /* quant_bytes */
#include "arrays.h"                  /* DOUBLES, FLOATS, sums, sum_add, ... */
#include "cuda_device.h"             /* B, D, acts, noise, ... */
#include "divergence.h"              /* divergence_check_all */
#include "frozen.h"                  /* frozen_check */
#include "quant_blocks.h"            /* quant_random */

enum { SEEDS = 3 };
/* Runs the statement in several orders of the emulated threads, or once on a GPU. */
#define IN_EVERY_ORDER(seed) for (uint64_t seed = 0; seed < (host_seed ? SEEDS : 1) && reorder(seed); seed++)
static bool reorder(uint64_t seed) {
    if (host_seed) host_seed(seed);
    return true;
}

/* ==== Layernorm and RMSNorm ==== */

typedef struct NormProblem {
    int N, C;
    float *x, *delta, *w, *b, *dout, *dx, *dw, *db; /* the last three: earlier contents */
} NormProblem;

static NormProblem norm_problem(Random *r, int N, int C) {
    const size_t n = (size_t)N * (size_t)C, c = (size_t)C;
    return (NormProblem){N,
                         C,
                         noise(r, n, 2),
                         noise(r, n, 1),
                         noise(r, c, 1),
                         noise(r, c, 1),
                         noise(r, n, 1),
                         noise(r, n, 1),
                         noise(r, c, 1),
                         noise(r, c, 1)};
}

static const int norm_shapes[][2] = {{1, 8},    {3, 7},    {40, 96},  {5, 768},  {17, 264}, {9, 1000},
                                     {2, 1600}, {3, 2056}, {2, 4104}, {1, 8200}, {33, 1},   {300, 16}};

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

static void check_norm_forward(const NormProblem *p, NormKind kind, bool residual) {
    const int N = p->N, C = p->C;
    const size_t n = (size_t)N * (size_t)C;
    Acts *x = acts(p->x, N, C), *delta = acts(p->delta, N, C), *out = acts(NULL, N, C);
    Weights *w = weights(p->w, (size_t)C), *b = weights(p->b, (size_t)C);
    Floats *mean = floats(NULL, (size_t)N), *rstd = floats(NULL, (size_t)N);
    Norm norm = norm_of(kind, x, out, mean, rstd, w, b, N, C);
    norm.delta = residual ? delta : NULL;
    norm.sum = residual ? x : NULL; /* sum may be x */
    B->norm_forward(D, &norm);
    double *want = DOUBLES(n), *size = DOUBLES(n), *means = DOUBLES((size_t)N), *rstds = DOUBLES((size_t)N);
    double *means_size = DOUBLES((size_t)N);
    float *sum = FLOATS(n);
    for (int i = 0; i < N; i++) {
        const size_t row = (size_t)i * (size_t)C;
        double m = 0, squares = 0;
        for (int c = 0; c < C; c++) {
            sum[row + (size_t)c] =
                residual ? stored(p->x[row + (size_t)c] + p->delta[row + (size_t)c]) : p->x[row + (size_t)c];
            m += kind == NORM_RMS ? 0 : sum[row + (size_t)c] / C;
            means_size[i] += fabs(sum[row + (size_t)c]) / C;
        }
        for (int c = 0; c < C; c++) squares += pow(sum[row + (size_t)c] - m, 2) / C;
        means[i] = m;
        rstds[i] = 1 / sqrt(squares + 1e-5);
        for (int c = 0; c < C; c++) {
            const double scaled = (sum[row + (size_t)c] - m) * rstds[i] * p->w[c];
            want[row + (size_t)c] = scaled + (kind == NORM_RMS ? 0 : p->b[c]);
            size[row + (size_t)c] = fabs(scaled) + fabs(p->b[c]) + fabs(p->w[c]) * rstds[i] * (means_size[i] + fabs(m));
        }
    }
    if (kind == NORM_LAYER) check("mean", fetch(mean, (size_t)N), means, means_size, C + 4, 0, (size_t)N);
    check("rstd", fetch(rstd, (size_t)N), rstds, NULL, 2 * C + 40, 0, (size_t)N);
    check("out", fetch_narrow(out, n), want, size, 2 * C + 40, 1, n);
    if (residual) assert_memory_equal(fetch_narrow(x, n), sum, n * sizeof *sum);
}

static void norm_forward_of(NormKind kind) {
    Random r = random_start(1, kind);
    for (size_t s = 0; s < sizeof norm_shapes / sizeof *norm_shapes; s++) {
        const NormProblem p = norm_problem(&r, norm_shapes[s][0], norm_shapes[s][1]);
        IN_EVERY_ORDER(seed) {
            check_norm_forward(&p, kind, false);
            check_norm_forward(&p, kind, true);
        }
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

static void norm_backward_of(NormKind kind) {
    Random r = random_start(2, kind);
    for (size_t s = 0; s < sizeof norm_shapes / sizeof *norm_shapes; s++) {
        const NormProblem p = norm_problem(&r, norm_shapes[s][0], norm_shapes[s][1]);
        const int N = p.N, C = p.C;
        const size_t n = (size_t)N * (size_t)C;
        float *mean_of = FLOATS((size_t)N), *rstd_of = FLOATS((size_t)N), *first[3] = {NULL};
        double *dx_want = DOUBLES(n), *dx_size = DOUBLES(n);
        Sum dw_want = sums((size_t)C, p.dw), db_want = sums((size_t)C, p.db);
        for (int i = 0; i < N; i++) {
            const size_t row = (size_t)i * (size_t)C;
            double m = 0, squares = 0, g_sum = 0, gn_sum = 0, g_size = 0;
            for (int c = 0; c < C; c++) m += kind == NORM_RMS ? 0 : p.x[row + (size_t)c] / C;
            for (int c = 0; c < C; c++) squares += pow(p.x[row + (size_t)c] - m, 2) / C;
            mean_of[i] = (float)m;
            rstd_of[i] = (float)(1 / sqrt(squares + 1e-5));
            for (int c = 0; c < C; c++) {
                const double o = p.dout[row + (size_t)c], norm = (p.x[row + (size_t)c] - mean_of[i]) * rstd_of[i];
                g_sum += kind == NORM_RMS ? 0 : o * p.w[c] / C;
                gn_sum += o * p.w[c] * norm / C;
                g_size += fabs(o * p.w[c]) * (1 + fabs(norm)) / C;
                sum_add(dw_want, (size_t)c, o * norm);
                if (kind == NORM_LAYER) sum_add(db_want, (size_t)c, o); /* RMSNorm leaves db alone */
            }
            for (int c = 0; c < C; c++) {
                const double norm = (p.x[row + (size_t)c] - mean_of[i]) * rstd_of[i];
                const double g = p.dout[row + (size_t)c] * p.w[c];
                dx_want[row + (size_t)c] = p.dx[row + (size_t)c] + rstd_of[i] * (g - g_sum - norm * gn_sum);
                dx_size[row + (size_t)c] =
                    fabs(p.dx[row + (size_t)c]) + rstd_of[i] * (fabs(g) + g_size * (1 + fabs(norm)));
            }
        }
        IN_EVERY_ORDER(seed) {
            Acts *x = acts(p.x, N, C), *dout = acts(p.dout, N, C), *dx = acts(p.dx, N, C);
            Weights *w = weights(p.w, (size_t)C);
            Floats *mean = floats(mean_of, (size_t)N), *rstd = floats(rstd_of, (size_t)N);
            Floats *dw = floats(p.dw, (size_t)C), *db = floats(p.db, (size_t)C);
            Norm norm = norm_of(kind, x, NULL, mean, rstd, w, w, N, C);
            norm.dout = dout;
            norm.dx = dx;
            norm.dw = dw;
            norm.db = db;
            B->norm_backward(D, &norm);
            float *got[] = {fetch_narrow(dx, n), fetch(dw, (size_t)C), fetch(db, (size_t)C)};
            check("dx", got[0], dx_want, dx_size, C + 40, 1, n);
            check("dw", got[1], dw_want.value, dw_want.size, N + 40, 0, (size_t)C);
            check("db", got[2], db_want.value, db_want.size, N + 40, 0, (size_t)C);
            for (int k = 0; k < 3; k++) /* the same bits in every order */
                if (seed) assert_memory_equal(got[k], first[k], (k ? (size_t)C : n) * sizeof(float));
                else first[k] = got[k];
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

/* An RMSNorm that multiplies by 1 + w and adds a residual, also in place; its backward pass sets dx. */
static void test_rmsnorm_variants(void **state) {
    (void)state;
    Random r = random_start(25, 0);
    for (size_t s = 0; s < sizeof norm_shapes / sizeof *norm_shapes; s++) {
        const NormProblem p = norm_problem(&r, norm_shapes[s][0], norm_shapes[s][1]);
        const int N = p.N, C = p.C;
        const size_t n = (size_t)N * (size_t)C;
        double *want = DOUBLES(n), *size = DOUBLES(n), *dx_want = DOUBLES(n), *dx_size = DOUBLES(n);
        float *rstds = FLOATS((size_t)N), *first[3] = {NULL};
        Sum dw_want = sums((size_t)C, p.dw);
        for (int i = 0; i < N; i++) {
            const float *x = p.x + (size_t)i * (size_t)C, *dout = p.dout + (size_t)i * (size_t)C;
            double squares = 0, mean = 0, mean_size = 0;
            for (int c = 0; c < C; c++) squares += pow(x[c], 2) / C;
            rstds[i] = (float)(1 / sqrt(squares + 1e-5));
            for (int c = 0; c < C; c++) {
                mean += dout[c] * (1.0 + p.w[c]) * x[c] * rstds[i] / C;
                mean_size += fabs(dout[c] * (1.0 + p.w[c]) * x[c] * rstds[i]) / C;
                sum_add(dw_want, (size_t)c, (double)dout[c] * x[c] * rstds[i]);
            }
            for (int c = 0; c < C; c++) {
                const size_t at = (size_t)i * (size_t)C + (size_t)c;
                const double norm = (double)x[c] * rstds[i], g = dout[c] * (1.0 + p.w[c]);
                want[at] = norm * (1.0 + p.w[c]) + p.delta[at];
                size[at] = fabs(norm) * (1 + fabs(p.w[c])) + fabs(p.delta[at]);
                dx_want[at] = rstds[i] * (g - norm * mean);
                dx_size[at] = rstds[i] * (fabs(dout[c]) * (1 + fabs(p.w[c])) + fabs(norm) * mean_size);
            }
        }
        IN_EVERY_ORDER(seed) {
            Acts *x = acts(p.x, N, C), *add = acts(p.delta, N, C), *out = acts(NULL, N, C), *dx = acts(NULL, N, C);
            Floats *rstd = floats(NULL, (size_t)N), *dw = floats(p.dw, (size_t)C);
            Norm norm = norm_of(NORM_RMS, x, out, NULL, rstd, weights(p.w, (size_t)C), NULL, N, C);
            norm.plus_one = norm.fresh = 1;
            norm.add = add;
            B->norm_forward(D, &norm);
            float *apart = fetch_narrow(out, n);
            check("out", apart, want, size, 2 * C + 40, 1, n);
            norm.out = add; /* the residual stream itself */
            B->norm_forward(D, &norm);
            assert_memory_equal(fetch_narrow(add, n), apart, n * sizeof *apart);
            norm.dout = acts(p.dout, N, C);
            norm.dx = dx; /* NaN before */
            norm.dw = dw;
            B->norm_backward(D, &norm);
            float *got[] = {apart, fetch_narrow(dx, n), fetch(dw, (size_t)C)};
            check("dx", got[1], dx_want, dx_size, 3 * C + 60, 1, n);
            check("dw", got[2], dw_want.value, dw_want.size, N + C + 40, 0, (size_t)C);
            for (int k = 0; k < 3; k++) /* the same bits in every order */
                if (seed) assert_memory_equal(got[k], first[k], (k < 2 ? n : (size_t)C) * sizeof(float));
                else first[k] = got[k];
        }
    }
}

/* The backward pass of layernorm that sets dx: the same bits as with an earlier content of 0. */
static void test_layernorm_fresh(void **state) {
    (void)state;
    Random r = random_start(26, 0);
    for (size_t s = 0; s < sizeof norm_shapes / sizeof *norm_shapes; s++) {
        const NormProblem p = norm_problem(&r, norm_shapes[s][0], norm_shapes[s][1]);
        const int N = p.N, C = p.C;
        const size_t n = (size_t)N * (size_t)C;
        float *got[2];
        for (int fresh = 0; fresh < 2; fresh++) {
            Acts *x = acts(p.x, N, C), *dx = acts(fresh ? p.dx : FLOATS(n), N, C);
            float *half = FLOATS((size_t)N);
            for (int i = 0; i < N; i++) half[i] = 0.5f; /* any statistics serve */
            Floats *mean = floats(half, (size_t)N), *rstd = floats(half, (size_t)N);
            Norm norm = norm_of(NORM_LAYER, x, NULL, mean, rstd, weights(p.w, (size_t)C), NULL, N, C);
            norm.dout = acts(p.dout, N, C);
            norm.dx = dx;
            norm.fresh = fresh;
            norm.dw = floats(p.dw, (size_t)C);
            norm.db = floats(p.db, (size_t)C);
            B->norm_backward(D, &norm);
            got[fresh] = fetch_narrow(dx, n);
        }
        assert_memory_equal(got[0], got[1], n * sizeof(float));
    }
}

/* ==== Rotary positions ==== */

typedef struct RotaryShape {
    int heads, kv_heads, head_size, rotated, margin; /* margin: channels after the keys */
    bool row, normed, still;
} RotaryShape;

/* The results of one row in float64, each with the sum of its absolute terms. w: NULL or the weights plus plus_one of
 * each channel. table NULL: no rotation. */
typedef struct RotaryRow {
    double y[4096], y_size[4096], dx[4096], dx_size[4096], dw[4096], dw_size[4096];
    double rstd[64];
} RotaryRow;

static void rotary_row(RotaryRow *to, const Rotary *p, const float *x, const float *dy, const double *w, int half,
                       const float *table) {
    const int HD = p->head_size, Q = p->heads * HD, width = Q + p->kv_heads * HD;
    double d[4096], d_size[4096];
    int groups = 0;
    for (int c = 0; c < width; c++) {
        to->y[c] = x[c];
        d[c] = dy[c];
    }
    for (int from = 0, n; w && from < width; from += n) {
        double squares = 0;
        n = from < Q ? p->q_group : p->k_group;
        for (int c = from; c < from + n; c++) squares += (double)x[c] * x[c] / n;
        const double rstd = to->rstd[groups++] = 1 / sqrt(squares + p->eps);
        for (int c = from; c < from + n; c++) to->y[c] = x[c] * rstd * w[c];
    }
    for (int c = 0; c < width; c++) {
        to->y_size[c] = fabs(to->y[c]);
        d_size[c] = fabs(d[c]);
    }
    for (int h = 0; h < width; h += HD)
        for (int j = 0; j < half && table; j++) {
            const double cosine = table[j], sine = table[half + j];
            const double a = to->y[h + j], b = to->y[h + half + j], da = d[h + j], db = d[h + half + j];
            to->y[h + j] = a * cosine - b * sine;
            to->y[h + half + j] = b * cosine + a * sine;
            to->y_size[h + j] = fabs(a * cosine) + fabs(b * sine);
            to->y_size[h + half + j] = fabs(b * cosine) + fabs(a * sine);
            d[h + j] = da * cosine + db * sine;
            d[h + half + j] = db * cosine - da * sine;
            d_size[h + j] = fabs(da * cosine) + fabs(db * sine);
            d_size[h + half + j] = fabs(db * cosine) + fabs(da * sine);
        }
    groups = 0;
    for (int from = 0, n; w && from < width; from += n) {
        const double rstd = to->rstd[groups++];
        double mean = 0, mean_size = 0;
        n = from < Q ? p->q_group : p->k_group;
        for (int c = from; c < from + n; c++) {
            mean += d[c] * w[c] * x[c] * rstd / n;
            mean_size += fabs(d_size[c] * w[c] * x[c] * rstd) / n;
        }
        for (int c = from; c < from + n; c++) {
            const double norm = x[c] * rstd;
            to->dw[c] = d[c] * norm;
            to->dw_size[c] = d_size[c] * fabs(norm);
            to->dx[c] = rstd * (d[c] * w[c] - norm * mean);
            to->dx_size[c] = rstd * (fabs(d_size[c] * w[c]) + fabs(norm) * mean_size);
        }
    }
    for (int c = 0; c < width && !w; c++) {
        to->dx[c] = d[c];
        to->dx_size[c] = d_size[c];
    }
}

static void check_rotary(const RotaryShape *s, int plus_one, Random *r) {
    enum { N = 37 };
    const int HD = s->head_size, Q = s->heads * HD, width = Q + s->kv_heads * HD, stride = width + s->margin;
    const int half = s->rotated / 2, table_stride = s->rotated + 4, groups = s->row ? 2 : width / HD;
    const size_t n = (size_t)(N * stride), kept_size = (size_t)(N * width);
    Rotary p = {.rows = N, .heads = s->heads, .kv_heads = s->kv_heads, .head_size = HD, .rotated = s->rotated};
    p.stride = stride;
    p.table_stride = table_stride;
    p.q_group = s->row ? Q : HD;
    p.k_group = s->row ? width - Q : HD;
    p.plus_one = plus_one;
    p.eps = 1e-3f;
    p.before_stride = width;
    const size_t qn = (size_t)p.q_group, kn = (size_t)p.k_group;
    const float *x = noise(r, n, 1), *dout = noise(r, n, 1), *qw = noise(r, qn, 1), *kw = noise(r, kn, 1);
    float *frequency = FLOATS((size_t)half), *first[4] = {NULL};
    for (int j = 0; j < half; j++) frequency[j] = powf(100, -2.0f * (float)j / (float)s->rotated);
    const int32_t *position = picks(r, N, 5000);
    double *w = DOUBLES((size_t)width), *y = DOUBLES(n), *y_size = DOUBLES(n), *dx = DOUBLES(n), *dx_size = DOUBLES(n);
    double *rstds = DOUBLES((size_t)(N * groups));
    Sum dqw = sums(qn, qw), dkw = sums(kn, kw);
    for (int c = 0; c < width; c++) w[c] = plus_one + (double)(c < Q ? qw[c % p.q_group] : kw[(c - Q) % p.k_group]);
    RotaryRow *row = (RotaryRow *)host(1, sizeof *row);
    IN_EVERY_ORDER(seed) {
        Floats *table = floats(NULL, (size_t)(N * table_stride));
        B->rotary_table(D, table, ints(position, N), floats(frequency, (size_t)half), 1.25f, N, half, table_stride);
        const float *angles = fetch(table, (size_t)(N * table_stride));
        for (int i = 0; i < N; i++)
            for (int j = 0; j < half; j++) { /* the angle is a product in float32 */
                const float angle = (float)position[i] * frequency[j];
                assert_true(fabs(angles[i * table_stride + j] - 1.25 * cos(angle)) < 4 * U);
                assert_true(fabs(angles[i * table_stride + half + j] - 1.25 * sin(angle)) < 4 * U);
            }
        for (int i = 0; i < N && !seed; i++) {
            rotary_row(row, &p, x + i * stride, dout + i * stride, s->normed ? w : NULL, half,
                       s->still ? NULL : angles + i * table_stride);
            for (int g = 0; g < groups; g++) rstds[i * groups + g] = row->rstd[g];
            for (int c = 0; c < stride; c++) { /* what follows the keys does not change */
                const int at = i * stride + c;
                y[at] = c < width ? row->y[c] : x[at];
                y_size[at] = c < width ? row->y_size[c] : 0;
                dx[at] = c < width ? row->dx[c] : dout[at];
                dx_size[at] = c < width ? row->dx_size[c] : 0;
            }
            for (int c = 0; c < width && s->normed; c++) {
                const Sum to = c < Q ? dqw : dkw;
                const size_t at = (size_t)(c < Q ? c % p.q_group : (c - Q) % p.k_group);
                to.value[at] += row->dw[c];
                to.size[at] += row->dw_size[c];
            }
        }
        Acts *qk = acts(x, N, stride), *gradient = acts(dout, N, stride), *before = acts(NULL, N, width);
        Floats *rstd = floats(NULL, (size_t)(N * groups)), *gq = floats(qw, qn), *gk = floats(kw, kn);
        p.table = s->still ? NULL : table;
        p.qw = s->normed ? weights(qw, qn) : NULL;
        p.kw = s->normed ? weights(kw, kn) : NULL;
        p.qk = qk;
        p.before = NULL;
        p.rstd = NULL;
        B->rotary_forward(D, &p); /* nothing is kept, as in decode */
        float *bare = fetch_narrow(qk, n);
        p.qk = acts(x, N, stride);
        p.before = s->normed ? before : NULL;
        p.rstd = s->normed ? rstd : NULL;
        p.dqw = s->normed ? gq : NULL;
        p.dkw = s->normed ? gk : NULL;
        B->rotary_forward(D, &p);
        float *got[4] = {fetch_narrow(p.qk, n)};
        assert_memory_equal(got[0], bare, n * sizeof(float));
        check("queries and keys", got[0], y, y_size, p.q_group + 40, 1, n);
        p.qk = gradient;
        B->rotary_backward(D, &p);
        got[1] = fetch_narrow(gradient, n);
        check("their gradients", got[1], dx, dx_size, 3 * p.q_group + 60, 1, n);
        got[2] = fetch(gq, qn);
        got[3] = fetch(gk, kn);
        if (s->normed) {
            const float *copy = fetch_narrow(before, kept_size);
            for (int i = 0; i < N; i++)
                assert_memory_equal(copy + i * width, x + i * stride, (size_t)width * sizeof *copy);
            check("rstd", fetch(rstd, (size_t)(N * groups)), rstds, NULL, p.q_group + 20, 0, (size_t)(N * groups));
            const double slack = N * s->heads + p.q_group + 60;
            check("gradient of the queries' norm", got[2], dqw.value, dqw.size, slack, 0, qn);
            check("gradient of the keys' norm", got[3], dkw.value, dkw.size, slack, 0, kn);
        }
        for (int k = 0; k < 4; k++) /* the same bits in every order */
            if (seed) assert_memory_equal(got[k], first[k], (k < 2 ? n : k == 2 ? qn : kn) * sizeof(float));
            else first[k] = got[k];
    }
}

static void test_rotary(void **state) {
    (void)state;
    static const RotaryShape shape[] = {
        // clang-format off
        /* heads kv D   R   margin row   normed still */
        {3, 1, 12,  12,  5,  false, false, false},
        {4, 2, 8,   6,   5,  false, true,  false},
        {6, 3, 10,  10,  5,  true,  true,  false},
        {2, 2, 16,  16,  5,  false, true,  true},
        {1, 1, 2,   2,   5,  false, true,  false},
        {5, 5, 20,  8,   5,  true,  true,  true},
        {4, 2, 64,  64,  128, false, false, false}, /* from here on 16 bytes at a time */
        {4, 2, 64,  48,  128, false, true,  false},
        {2, 1, 256, 256, 256, false, true,  false},
        {3, 1, 32,  16,  32, true,  true,  false},
        {9, 3, 128, 128, 384, true,  true,  false},
        {2, 1, 96,  0,   96, false, true,  true},
        {2, 1, 200, 200, 7,  false, true,  false}, /* more units than lanes */
        // clang-format on
    };
    Random r = random_start(27, 0);
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) check_rotary(&shape[s], s % 2, &r);
    const Rotary empty = {.heads = 1, .kv_heads = 1, .head_size = 8, .q_group = 8, .k_group = 8};
    B->rotary_forward(D, &empty);
    B->rotary_backward(D, &empty);
}

/* ==== Embedding, gather, scatter, noise ==== */

static void test_embed(void **state) {
    (void)state;
    Random r = random_start(3, 0);
    const int shape[][4] = {{1, 8, 5, 3}, {37, 24, 6, 9}, {300, 40, 3, 50}, {20, 7, 5, 5}, {150, 1032, 4, 150}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        const int N = shape[s][0], C = shape[s][1], V = shape[s][2], P = shape[s][3];
        const size_t n = (size_t)N * (size_t)C, v = (size_t)V * (size_t)C, p = (size_t)P * (size_t)C;
        const float *wte = noise(&r, v, 1), *wpe = noise(&r, p, 1), *dout = noise(&r, n, 1);
        const float *dwte = noise(&r, v, 1), *dwpe = noise(&r, p, 1);
        const int32_t *token = picks(&r, (size_t)N, V), *position = picks(&r, (size_t)N, P);
        float *want = FLOATS(n), *want_te = FLOATS(v), *want_pe = FLOATS(p);
        memcpy(want_te, dwte, v * sizeof *dwte);
        memcpy(want_pe, dwpe, p * sizeof *dwpe);
        for (int i = 0; i < N; i++)
            for (int c = 0; c < C; c++) {
                const size_t at = (size_t)(i * C + c);
                want[at] = stored(wte[token[i] * C + c] + wpe[position[i] * C + c]);
                want_te[token[i] * C + c] += dout[at];
                want_pe[position[i] * C + c] += dout[at];
            }
        IN_EVERY_ORDER(seed) {
            Acts *out = acts(NULL, N, C), *gradient = acts(dout, N, C);
            Ints *tokens = ints(token, (size_t)N), *positions = ints(position, (size_t)N);
            Floats *gte = floats(dwte, v), *gpe = floats(dwpe, p);
            B->embed_forward(D, out, weights(wte, v), weights(wpe, p), tokens, positions, 1, N, C);
            B->embed_backward(D, gte, gpe, gradient, tokens, positions, 1, N, C);
            assert_memory_equal(fetch_narrow(out, n), want, n * sizeof *want);
            /* added in the CPU's order, so the bits are the CPU's */
            assert_memory_equal(fetch(gte, v), want_te, v * sizeof *want_te);
            assert_memory_equal(fetch(gpe, p), want_pe, p * sizeof *want_pe);
        }
    }
}

/* A scale, with and without positions. */
static void test_embed_scaled(void **state) {
    (void)state;
    Random r = random_start(28, 0);
    const int shape[][3] = {{50, 130, 20}, {37, 24, 6}, {150, 1032, 4}};
    for (size_t s = 0; s < 6; s++) {
        const int N = shape[s / 2][0], C = shape[s / 2][1], V = shape[s / 2][2];
        const bool placed = s % 2;
        const size_t n = (size_t)(N * C), v = (size_t)(V * C);
        const float *wte = noise(&r, v, 1), *wpe = noise(&r, v, 1), *dout = noise(&r, n, 1), *t0 = noise(&r, v, 1);
        const float scale = 25.298f;
        const int32_t *token = picks(&r, (size_t)N, V), *position = picks(&r, (size_t)N, V);
        double *want = DOUBLES(n), *size = DOUBLES(n);
        Sum te = sums(v, t0), pe = sums(v, t0);
        for (size_t i = 0; i < n; i++) {
            const size_t row = i / (size_t)C, c = i % (size_t)C, at = (size_t)(token[row] * C) + c;
            const size_t place = (size_t)(position[row] * C) + c;
            want[i] = (double)scale * wte[at] + (placed ? wpe[place] : 0);
            size[i] = fabs((double)scale * wte[at]) + fabs(wpe[place]);
            sum_add(te, at, (double)scale * dout[i]);
            sum_add(pe, place, dout[i]);
        }
        IN_EVERY_ORDER(seed) {
            Acts *out = acts(NULL, N, C), *gradient = acts(dout, N, C);
            Ints *tokens = ints(token, (size_t)N), *positions = placed ? ints(position, (size_t)N) : NULL;
            Floats *gte = floats(t0, v), *gpe = floats(t0, v);
            B->embed_forward(D, out, weights(wte, v), placed ? weights(wpe, v) : NULL, tokens, positions, scale, N, C);
            B->embed_backward(D, gte, placed ? gpe : NULL, gradient, tokens, positions, scale, N, C);
            check("scaled embeddings", fetch_narrow(out, n), want, size, 2, 1, n);
            check("their gradient", fetch(gte, v), te.value, te.size, 2 * N, 0, v);
            if (placed) check("that of positions", fetch(gpe, v), pe.value, pe.size, N, 0, v);
            else assert_memory_equal(fetch(gpe, v), t0, v * sizeof *t0);
        }
    }
}

static void test_add(void **state) {
    (void)state;
    Random r = random_start(29, 0);
    const size_t counts[] = {1, 8, 1000, 20008, 20011};
    for (int k = 0; k < 5; k++) {
        const size_t n = counts[k];
        const float *x = noise(&r, n + 3, 1), *y = noise(&r, n + 3, 1);
        float *want = FLOATS(n + 3);
        for (size_t i = 0; i < n + 3; i++) want[i] = i < n ? stored(x[i] + y[i]) : x[i];
        Acts *sum = acts(x, (int)n + 3, 1);
        B->add(D, sum, acts(y, (int)n + 3, 1), n);
        assert_memory_equal(fetch_narrow(sum, n + 3), want, (n + 3) * sizeof *want);
    }
}

static void test_rows(void **state) {
    (void)state;
    Random r = random_start(4, 0);
    const int shape[][3] = {{1, 1, 8}, {20, 33, 24}, {9, 200, 7}, {50, 40, 776}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        const int N = shape[s][0], R = shape[s][1], C = shape[s][2];
        const float *x = noise(&r, (size_t)(N * C), 1), *in = noise(&r, (size_t)(R * C), 1);
        const int32_t *row = picks(&r, (size_t)R, N);
        float *gathered = FLOATS((size_t)(R * C)), *first = NULL;
        Sum scattered = sums((size_t)(N * C), x);
        for (int i = 0; i < R; i++)
            for (int c = 0; c < C; c++) {
                gathered[i * C + c] = x[row[i] * C + c];
                sum_add(scattered, (size_t)(row[i] * C + c), in[i * C + c]);
            }
        IN_EVERY_ORDER(seed) {
            Acts *dx = acts(x, N, C), *out = acts(NULL, R, C), *add = acts(in, R, C);
            Ints *rows = ints(row, (size_t)R);
            B->gather_rows(D, out, dx, rows, R, C);
            assert_memory_equal(fetch_narrow(out, (size_t)(R * C)), gathered, (size_t)(R * C) * sizeof(float));
            B->scatter_rows(D, dx, add, rows, R, C);
            float *got = fetch_narrow(dx, (size_t)(N * C));
            /* one rounding per 128 rows examined */
            check("scatter", got, scattered.value, scattered.size, R + (dtype ? 2 * 0x1p15 : 0), 1, (size_t)(N * C));
            if (seed) assert_memory_equal(got, first, (size_t)(N * C) * sizeof(float));
            else first = got;
        }
    }
}

static void test_noise(void **state) {
    (void)state;
    enum { N = 13, C = 21 };
    Random r = random_start(5, 0);
    const float *x = noise(&r, N * C, 1), *scale = noise(&r, N, 1);
    Acts *device = acts(x, N, C);
    const uint64_t seed = 0x123456789abcull, stream = RANDOM_NOISE + 7;
    int32_t record[N], position[N];
    for (int i = 0; i < N; i++) {
        record[i] = 7 * i + (i == 3 ? 100000 : 0);
        position[i] = (5 * i + 2) % N;
    }
    B->noise_add(D, device, floats(scale, N), ints(record, N), ints(position, N), N, C, seed, stream);
    const float *got = fetch_narrow(device, N * C);
    double want[N * C];
    for (int i = 0; i < N * C; i++)
        want[i] = x[i] + (double)scale[i / C] * (2.0 * random_uniform(seed, stream + (uint64_t)record[i / C],
                                                                      (uint64_t)(position[i / C] * C + i % C)) -
                                                 1.0);
    double size[N * C];
    for (int i = 0; i < N * C; i++) size[i] = fabs(x[i]) + fabs(scale[i / C]);
    check("noise", got, want, size, 4, 1, N * C);
}

/* ==== Products ==== */

static double gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x))); }
static double gelu_slope(double x) {
    const double u = sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x), t = tanh(u);
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / acos(-1)) * (1 + 3 * 0.044715 * x * x);
}

static const int linear_shapes[][3] = {{1, 8, 16}, {16, 32, 24}, {17, 24, 40}, {33, 48, 8}, {5, 7, 3}, {70, 64, 72}};

static void test_linear_forward(void **state) {
    (void)state;
    Random r = random_start(6, 0);
    for (size_t s = 0; s < sizeof linear_shapes / sizeof *linear_shapes; s++) {
        const int N = linear_shapes[s][0], IC = linear_shapes[s][1], OC = linear_shapes[s][2];
        const float *x = noise(&r, (size_t)(N * IC), 1), *w = noise(&r, (size_t)(OC * IC), 1);
        const float *b = noise(&r, (size_t)OC, 1);
        const size_t n = (size_t)(N * OC);
        Sum plain = sums(n, NULL), shifted = sums(n, NULL);
        for (int i = 0; i < N; i++)
            for (int o = 0; o < OC; o++) {
                for (int c = 0; c < IC; c++) {
                    sum_add(plain, (size_t)(i * OC + o), (double)x[i * IC + c] * w[o * IC + c]);
                    sum_add(shifted, (size_t)(i * OC + o), (double)x[i * IC + c] * w[o * IC + c]);
                }
                sum_add(shifted, (size_t)(i * OC + o), b[o]);
            }
        Weights *dw = weights(w, (size_t)(OC * IC)), *db = weights(b, (size_t)OC);
        Acts *dx = acts(x, N, IC);
        for (int bias = 0; bias < 2; bias++) {
            const Sum want = bias ? shifted : plain;
            Acts *out = acts(NULL, N, OC);
            B->linear_forward(D, out, dx, dw, bias ? db : NULL, N, IC, OC);
            /* without a fused epilogue the sum is rounded before the bias is added */
            check("out", fetch_narrow(out, n), want.value, want.size, IC + 8 + (dtype ? 0x1p16 : 0), 1, n);
        }
        Acts *pre = acts(NULL, N, OC), *out = acts(NULL, N, OC);
        B->linear_gelu_forward(D, pre, out, dx, dw, db, N, IC, OC);
        const float *got = fetch_narrow(pre, n);
        check("pre", got, shifted.value, shifted.size, IC + 8 + (dtype ? 0x1p16 : 0), 1, n);
        double *want = DOUBLES(n), *size = DOUBLES(n);
        for (size_t i = 0; i < n; i++) {
            want[i] = gelu(shifted.value[i]);
            size[i] = 1.2 * shifted.size[i];
        }
        check("gelu", fetch_narrow(out, n), want, size, IC + 16 + (dtype ? 0x1.8p16 : 0), 1, n);
    }
}

/* linear_backward, alone or followed by the GELU of the layer below, with given earlier contents of dw and db. */
static void check_linear_backward(Random *r, int N, int IC, int OC, bool with_gelu) {
    const float *dout = noise(r, (size_t)(N * OC), 1), *x = noise(r, (size_t)(N * IC), 1);
    const float *w = noise(r, (size_t)(OC * IC), 1), *pre = noise(r, (size_t)(N * IC), 2);
    const float *dw = noise(r, (size_t)(OC * IC), 1), *db = noise(r, (size_t)OC, 1);
    Sum dx_want = sums((size_t)(N * IC), NULL), dw_want = sums((size_t)(OC * IC), dw), db_want = sums((size_t)OC, db);
    for (int i = 0; i < N; i++)
        for (int o = 0; o < OC; o++) {
            sum_add(db_want, (size_t)o, dout[i * OC + o]);
            for (int c = 0; c < IC; c++) {
                sum_add(dx_want, (size_t)(i * IC + c), (double)dout[i * OC + o] * w[o * IC + c]);
                sum_add(dw_want, (size_t)(o * IC + c), (double)dout[i * OC + o] * x[i * IC + c]);
            }
        }
    if (with_gelu)
        for (int i = 0; i < N * IC; i++) {
            dx_want.value[i] *= gelu_slope(pre[i]);
            dx_want.size[i] *= 1.2;
        }
    Acts *ddout = acts(dout, N, OC), *ddx = acts(NULL, N, IC), *dx = acts(x, N, IC), *dpre = acts(pre, N, IC);
    Weights *dweights = weights(w, (size_t)(OC * IC));
    Floats *ddw = floats(dw, (size_t)(OC * IC)), *ddb = floats(db, (size_t)OC);
    B->linear_backward(D, ddx, ddw, ddb, ddout, dx, dweights, N, IC, OC);
    if (with_gelu) B->gelu_backward(D, ddx, dpre, (size_t)(N * IC));
    check("dx", fetch_narrow(ddx, (size_t)(N * IC)), dx_want.value, dx_want.size, OC + 16 + (dtype ? 0x1p16 : 0), 1,
          (size_t)(N * IC));
    check("dw", fetch(ddw, (size_t)(OC * IC)), dw_want.value, dw_want.size, N + 16, 0, (size_t)(OC * IC));
    check("db", fetch(ddb, (size_t)OC), db_want.value, db_want.size, N + 16, 0, (size_t)OC);
    B->linear_backward(D, NULL, ddw, NULL, ddout, dx, dweights, N, IC, OC); /* only dw, a second time */
    for (int i = 0; i < OC * IC; i++) {
        dw_want.value[i] += dw_want.value[i] - dw[i];
        dw_want.size[i] *= 2;
    }
    check("dw twice", fetch(ddw, (size_t)(OC * IC)), dw_want.value, dw_want.size, 2 * N + 16, 0, (size_t)(OC * IC));
    check("db kept", fetch(ddb, (size_t)OC), db_want.value, db_want.size, N + 16, 0, (size_t)OC);
}

static void test_linear_backward(void **state) {
    (void)state;
    Random r = random_start(7, 0);
    for (size_t s = 0; s < sizeof linear_shapes / sizeof *linear_shapes; s++)
        for (int with_gelu = 0; with_gelu < 2; with_gelu++)
            check_linear_backward(&r, linear_shapes[s][0], linear_shapes[s][1], linear_shapes[s][2], with_gelu);
    check_linear_backward(&r, 700, 16, 24, true); /* sums of columns in several parts */
}

/* A bias, weights and activations at unaligned addresses: no fused epilogue, and elements are read one at a time. */
static void test_linear_anywhere(void **state) {
    (void)state;
    enum { N = 9, IC = 16, OC = 24 };
    Random r = random_start(12, 0);
    const float *x = noise(&r, (N + 1) * IC, 1), *w = noise(&r, OC * IC + 1, 1), *b = noise(&r, OC + 1, 1);
    Weights *dw = weights(w, OC * IC + 1), *db = weights(b, OC + 1);
    Acts *dx = acts(x, N + 1, IC), *pre = acts(NULL, N + 1, OC), *out = acts(NULL, N + 1, OC);
    Sum want = sums(N * OC, NULL);
    double activated[N * OC];
    for (int i = 0; i < N; i++)
        for (int o = 0; o < OC; o++) {
            sum_add(want, (size_t)(i * OC + o), b[1 + o]);
            for (int c = 0; c < IC; c++) sum_add(want, (size_t)(i * OC + o), (double)x[i * IC + c] * w[1 + o * IC + c]);
            activated[i * OC + o] = gelu(want.value[i * OC + o]);
        }
    const double slack = IC + 16 + (dtype ? 0x1.8p16 : 0);
    B->linear_gelu_forward(D, pre, out, dx, weights_at(B, dw, 1), weights_at(B, db, 1), N, IC, OC);
    check("pre", fetch_narrow(pre, N * OC), want.value, want.size, slack, 1, N * OC);
    for (int i = 0; i < N * OC; i++) want.size[i] *= 1.2;
    check("gelu", fetch_narrow(out, N * OC), activated, want.size, slack, 1, N * OC);
    /* a gelu_backward unrelated to the linear_backward before it */
    const float *dout = noise(&r, N * OC, 1), *other = noise(&r, N * IC, 1);
    Acts *gradient = acts(NULL, N, IC), *apart = acts(other, N, IC), *from = acts(dout, N, OC);
    Floats *gw = floats(FLOATS(OC * IC), OC * IC);
    Sum plain = sums(N * IC, NULL);
    double sloped[N * IC], size[N * IC];
    for (int i = 0; i < N; i++)
        for (int c = 0; c < IC; c++) {
            for (int o = 0; o < OC; o++)
                sum_add(plain, (size_t)(i * IC + c), (double)dout[i * OC + o] * w[1 + o * IC + c]);
            sloped[i * IC + c] = other[i * IC + c] * gelu_slope(x[i * IC + c]);
            size[i * IC + c] = fabs(other[i * IC + c]);
        }
    B->linear_backward(D, gradient, gw, NULL, from, dx, weights_at(B, dw, 1), N, IC, OC);
    B->gelu_backward(D, apart, dx, N * IC);
    check("dx", fetch_narrow(gradient, N * IC), plain.value, plain.size, OC + 16, 1, N * IC);
    check("another", fetch_narrow(apart, N * IC), sloped, size, 60, 1, N * IC);
}

static void test_gelu(void **state) {
    (void)state;
    enum { N = 1027 };
    static const float far[] = {0, -0.0f, 1e-30f, -1e-30f, 20, -20, 1e19f, -1e19f, 3e38f, -3e38f};
    enum { FAR = sizeof far / sizeof *far };
    Random r = random_start(8, 0);
    float *x = noise(&r, N, 3);
    const float *o = noise(&r, N, 1);
    double want[N], slope[N], size[N];
    for (int i = 0; i < FAR; i++) x[i] = stored(far[i]);
    for (int i = 0; i < N; i++) {
        want[i] = x[i] < -1e6 ? 0 : x[i] > 1e6 ? x[i] : gelu(x[i]);
        slope[i] = o[i] * (x[i] < -1e6 ? 0 : x[i] > 1e6 ? 1 : gelu_slope(x[i]));
        size[i] =
            fabs(want[i]) + fabs(x[i] < 0 && x[i] > -30 ? x[i] : 0); /* 1 + tanh cancels for some values below 0 */
    }
    Acts *pre = acts(x, 1, N), *out = acts(NULL, 1, N), *d = acts(o, 1, N);
    B->gelu_forward(D, out, pre, N);
    B->gelu_backward(D, d, pre, N);
    check("gelu", fetch_narrow(out, N), want, size, 40, 1, N);
    for (int i = 0; i < N; i++) size[i] = 4 * fabs(o[i]);
    check("slope", fetch_narrow(d, N), slope, size, 60, 1, N);
}

static double silu_slope(double g) {
    const double s = 1 / (1 + exp(-g));
    return s + g * s / (1 + exp(g));
}

static void test_gate(void **state) {
    (void)state;
    static const int shapes[][2] = {/* N, F */ {1, 8}, {5, 37}, {19, 64}, {3, 1}, {40, 256}};
    Random r = random_start(24, 0);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (MlpKind kind = MLP_SWIGLU; kind <= MLP_GEGLU; kind++) {
            const int N = shapes[s][0], F = shapes[s][1];
            const size_t n = (size_t)(N * F);
            const float *x = noise(&r, 2 * n, 3), *dout = noise(&r, n, 1);
            double *want = DOUBLES(n), *size = DOUBLES(n), *slope = DOUBLES(2 * n), *slope_size = DOUBLES(2 * n);
            Acts *pre = acts(x, N, 2 * F), *out = acts(NULL, N, F), *grad = acts(dout, N, F);
            Acts *dpre = acts(NULL, N, 2 * F);
            B->gate_forward(D, out, pre, kind, N, F);
            B->gate_backward(D, dpre, grad, pre, kind, N, F);
            for (int i = 0; i < N; i++)
                for (int c = 0; c < F; c++) {
                    const double g = x[2 * i * F + c], u = x[2 * i * F + F + c], o = dout[i * F + c];
                    const double f = kind == MLP_GEGLU ? gelu(g) : g / (1 + exp(-g));
                    const double df = kind == MLP_GEGLU ? gelu_slope(g) : silu_slope(g);
                    const double steep = 1 + 2 * fabs(g) * (1 + g * g);
                    want[i * F + c] = f * u;
                    size[i * F + c] = (fabs(f) + 0x1p-20) * fabs(u) * steep; /* 1 + tanh of the reference cancels */
                    slope[2 * i * F + c] = o * u * df;
                    slope_size[2 * i * F + c] = fabs(o * u) * (1 + fabs(g) * steep);
                    slope[2 * i * F + F + c] = o * f;
                    slope_size[2 * i * F + F + c] = fabs(o) * (fabs(f) + 0x1p-20) * steep;
                }
            check("gate", fetch_narrow(out, n), want, size, 40, 1, n);
            check("gate'", fetch_narrow(dpre, 2 * n), slope, slope_size, 40, 1, 2 * n);
        }
}

/* ==== Quantised matrices ==== */

/* Products with matrices in blocks of every type, of three types at once, and their gradient, for few and many rows. With
 * bf16 storage the values of the blocks are rounded. */
static void test_quantized(void **state) {
    (void)state;
    static const int rows_of[] = {1, 5, 16, 70};
    Random r = random_start(37, 0);
    for (int first = 0; first < QUANT_COUNT; first++)
        for (int parts = 1; parts <= QUANT_PARTS; parts += 2) {
            QuantMatrix q = {.parts = parts};
            const int K = 512, N = rows_of[first % 4];
            int M = 0;
            for (int p = 0; p < parts; p++) M += q.rows[p] = 5 + 16 * p;
            float *w = FLOATS(M * K), *at = w;
            for (int p = 0; p < parts; p++) {
                q.type[p] = (first + p) % QUANT_COUNT;
                const size_t n = (size_t)(q.rows[p] * K);
                void *blocks = quant_random(&r, (QuantType)q.type[p], n, at);
                const size_t words = (quant_bytes((QuantType)q.type[p], n) + 3) / 4;
                float *padded = FLOATS(words);
                memcpy(padded, blocks, quant_bytes((QuantType)q.type[p], n));
                q.blocks[p] = (const Blocks *)floats(padded, words);
                free(blocks);
                at += n;
            }
            for (int i = 0; i < M * K; i++) w[i] = stored(w[i]);
            const float *x = noise(&r, (size_t)(N * K), 1), *b = noise(&r, (size_t)M, 1);
            const float *dout = noise(&r, (size_t)(N * M), 1);
            Sum out = sums((size_t)(N * M), NULL), dx = sums((size_t)(N * K), NULL);
            sum_linear(out, dx, x, w, b, dout, N, K, M);
            Acts *got = acts(NULL, N, M), *gradient = acts(NULL, N, K);
            B->quant_forward(D, got, acts(x, N, K), &q, weights(b, (size_t)M), N, K, M);
            B->quant_backward(D, gradient, acts(dout, N, M), &q, N, K, M);
            check("out", fetch_narrow(got, (size_t)(N * M)), out.value, out.size, K + 8, 1, (size_t)(N * M));
            check("dx", fetch_narrow(gradient, (size_t)(N * K)), dx.value, dx.size, M + 8, 1, (size_t)(N * K));
        }
}

/* ==== Adapters ==== */

typedef struct LoraShape {
    int rows, in, rank, parts, count[LORA_PARTS], margin; /* margin: channels before each part that belong to none */
} LoraShape;

/* The values of a problem with adapters: inputs, and earlier contents of what is added to. */
typedef struct LoraProblem {
    const float *x, *a, *b, *dout, *out, *dx, *da, *db;
    int all, outs; /* inner channels, rows of b */
} LoraProblem;

static LoraProblem lora_problem(Random *r, const LoraShape *s, Lora *l) {
    LoraProblem p = {.all = s->parts * s->rank};
    *l = (Lora){.rows = s->rows, .in = s->in, .rank = s->rank, .parts = s->parts, .scale = 0.75f};
    for (int part = 0; part < s->parts; part++) {
        l->first[part] = l->stride + s->margin;
        l->count[part] = s->count[part];
        l->stride = l->first[part] + l->count[part];
        p.outs += s->count[part];
    }
    const size_t n = (size_t)s->rows, in = (size_t)s->in, all = (size_t)p.all, b = (size_t)(p.outs * s->rank);
    p.x = noise(r, n * in, 1);
    p.a = noise(r, all * in, 0.3);
    p.b = noise(r, b, 0.3);
    p.dout = noise(r, n * (size_t)l->stride, 1);
    p.out = noise(r, n * (size_t)l->stride, 1);
    p.dx = noise(r, n * in, 1);
    p.da = noise(r, all * in, 1);
    p.db = noise(r, b, 1);
    return p;
}

/* Checks one problem. With bf16 storage h and dh are rounded, by at most 2^-8 = 2^16 u each; the reference of db takes
 * h as the device has stored it. */
static void check_lora(Random *r, const LoraShape *s) {
    Lora l;
    const LoraProblem p = lora_problem(r, s, &l);
    const int N = l.rows, K = l.in, S = l.stride, all = p.all, rank = l.rank;
    const size_t n_h = (size_t)(N * all), n_out = (size_t)(N * S), n_x = (size_t)(N * K), n_a = (size_t)(all * K);
    const size_t n_b = (size_t)(p.outs * rank);
    const double half = dtype == DTYPE_BF16 ? 0x1.02p16 : 0;
    Sum h = sums(n_h, NULL), dh = sums(n_h, NULL), out = sums(n_out, p.out), dx = sums(n_x, p.dx);
    Sum da = sums(n_a, p.da);
    for (int i = 0; i < N; i++)
        for (int k = 0; k < all; k++)
            for (int c = 0; c < K; c++) sum_add(h, (size_t)(i * all + k), (double)p.x[i * K + c] * p.a[k * K + c]);
    for (int part = 0, row = 0; part < l.parts; row += l.count[part++])
        for (int c = 0; c < l.count[part]; c++)
            for (int k = 0; k < rank; k++)
                for (int i = 0; i < N; i++) {
                    const size_t at = (size_t)(i * S + l.first[part] + c), inner = (size_t)(i * all + part * rank + k);
                    const double b = 0.75 * p.b[(row + c) * rank + k];
                    out.value[at] += h.value[inner] * b;
                    out.size[at] += h.size[inner] * fabs(b);
                    sum_add(dh, inner, p.dout[at] * b);
                }
    for (int i = 0; i < N; i++)
        for (int k = 0; k < all; k++)
            for (int c = 0; c < K; c++) {
                const double d = dh.value[i * all + k], size = dh.size[i * all + k];
                dx.value[i * K + c] += d * p.a[k * K + c];
                dx.size[i * K + c] += size * fabs(p.a[k * K + c]);
                da.value[k * K + c] += d * p.x[i * K + c];
                da.size[k * K + c] += size * fabs(p.x[i * K + c]);
            }
    float *first[5] = {NULL};
    IN_EVERY_ORDER(seed) {
        l.x = acts(p.x, N, K);
        l.a = weights(p.a, n_a);
        l.b = weights(p.b, n_b);
        l.h = acts(NULL, N, all);
        l.out = acts(p.out, N, S);
        B->lora_forward(D, &l);
        l.dout = acts(p.dout, N, S);
        l.dx = acts(p.dx, N, K);
        l.da = floats(p.da, n_a);
        l.db = floats(p.db, n_b);
        B->lora_backward(D, &l);
        float *got[5] = {fetch_narrow(l.h, n_h), fetch_narrow(l.out, n_out), fetch_narrow(l.dx, n_x), fetch(l.da, n_a),
                         fetch(l.db, n_b)};
        Sum db = sums(n_b, p.db);
        for (int part = 0, row = 0; part < l.parts; row += l.count[part++])
            for (int c = 0; c < l.count[part]; c++)
                for (int k = 0; k < rank; k++)
                    for (int i = 0; i < N; i++)
                        sum_add(db, (size_t)((row + c) * rank + k),
                                0.75 * p.dout[i * S + l.first[part] + c] * got[0][i * all + part * rank + k]);
        check("h", got[0], h.value, h.size, K + 8, 1, n_h);
        check("out", got[1], out.value, out.size, K + rank + 8 + half, 1, n_out);
        check("dx", got[2], dx.value, dx.size, S + all + 8 + half, 1, n_x);
        check("da", got[3], da.value, da.size, S + N + 8 + half, 0, n_a);
        check("db", got[4], db.value, db.size, N + 8, 0, n_b);
        for (int i = 0; i < N; i++) /* the margins are not written */
            for (int part = 0; part < l.parts; part++)
                for (int c = l.first[part] - s->margin; c < l.first[part]; c++)
                    assert_true(got[1][i * S + c] == p.out[i * S + c]);
        const size_t size[] = {n_h, n_out, n_x, n_a, n_b};
        for (int k = 0; k < 5; k++) /* the same bits in every order */
            if (seed) assert_memory_equal(got[k], first[k], size[k] * sizeof(float));
            else first[k] = got[k];
    }
}

static void test_lora(void **state) {
    (void)state;
    static const LoraShape shape[] = {{1, 24, 3, 1, {40}, 0},        {2, 7, 1, 3, {5, 2, 3}, 2},
                                      {5, 33, 16, 2, {24, 24}, 0},   {19, 40, 8, 3, {40, 8, 8}, 5},
                                      {70, 16, 5, 1, {9}, 3},        {33, 64, 64, 3, {64, 32, 32}, 0},
                                      {3, 16, 1024, 2, {16, 16}, 8}, {200, 48, 2, 2, {96, 96}, 0}};
    Random r = random_start(33, 0);
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) check_lora(&r, &shape[s]);
    const Lora empty = {.in = 8, .rank = 2, .parts = 1, .stride = 8, .count = {8}};
    B->lora_forward(D, &empty);
    B->lora_backward(D, &empty);
}

/* The scratch memory of the backward pass is counted and predicted, on a device of its own. */
static void test_lora_scratch(void **state) {
    (void)state;
    enum { N = 1 << 15, RANK = 1024, COUNT = 8 };
    Error e;
    Device *d;
    if (!B->open(&d, dtype, &e)) fail_msg("%s", e.text);
    Lora l = {.rows = N, .in = COUNT, .rank = RANK, .parts = 1, .stride = COUNT, .count = {COUNT}, .scale = 1};
    const size_t h = (size_t)N * RANK, x = (size_t)N * COUNT, w = RANK * COUNT, unit = B->act_size;
    const size_t bytes = (h + 3 * x + 2 * w) * unit + 2 * w * sizeof(float);
    char *memory = (char *)B->alloc(d, bytes, "a test", &e);
    assert_non_null(memory);
    B->zero(d, memory, bytes);
    l.h = (Acts *)memory;
    l.x = (Acts *)(memory + h * unit);
    l.dout = (Acts *)(memory + (h + x) * unit);
    l.dx = (Acts *)(memory + (h + 2 * x) * unit);
    l.a = (Weights *)(memory + (h + 3 * x) * unit);
    l.b = (Weights *)(memory + (h + 3 * x + w) * unit);
    l.da = (Floats *)(memory + (h + 3 * x + 2 * w) * unit);
    l.db = floats_at(l.da, w);
    const size_t before = B->scratch_bytes(d);
    B->lora_backward(d, &l);
    if (!B->sync(d, &e)) fail_msg("%s", e.text);
    const size_t grown = B->scratch_bytes(d) - before, more = h * unit;
    assert_true(grown >= more && grown <= more + more / 3); /* scratch memory grows with a reserve of a quarter */
    ScratchUse use = {.rows = N, .width = COUNT, .widest = COUNT, .padded_vocab = 16};
    const size_t none = B->scratch_predict(d, &use);
    use.adapters = RANK;
    const size_t with = B->scratch_predict(d, &use);
    assert_true(with > none && with - before >= more && with - before <= more + more / 3);
    B->release(d, memory);
    B->close(d);
}

/* In bf16 storage the gradient of the logits, its products and their results are rounded to 8 bits. */
static void test_divergence(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < (host_seed ? 2 : 1) && reorder(seed); seed++)
        divergence_check_all(B, D, dtype == DTYPE_BF16 ? 0x1p17 : 256);
}

static void test_frozen(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < (host_seed ? 2 : 1) && reorder(seed); seed++) frozen_check(B, D);
}

/* ==== Optimizer ==== */

/* The update in float64. */
static double adamw_formula(double p, double *m, double *v, double grad, const AdamW *a) {
    const double g = grad * a->grad_scale, b1 = a->beta1, b2 = a->beta2;
    *m = b1 * *m + (1 - b1) * g;
    *v = b2 * *v + (1 - b2) * g * g;
    const double mean = *m / (1 - pow(b1, (double)a->step)), square = *v / (1 - pow(b2, (double)a->step));
    return p - a->lr * (mean / (sqrt(square) + a->eps) + a->weight_decay * p);
}

static AdamW adamw_of(int n) {
    return (AdamW){.n = (size_t)n,
                   .lr = 1e-3f,
                   .beta1 = 0.9f,
                   .beta2 = 0.95f,
                   .eps = 1e-8f,
                   .weight_decay = 0.1f,
                   .grad_scale = 0.5f,
                   .step = 3};
}

static void test_adamw(void **state) {
    (void)state;
    Random r = random_start(9, 0);
    const int counts[] = {1, 7, 8, 1000, 4099};
    for (int k = 0; k < 5; k++) {
        const int n = counts[k];
        AdamW a = adamw_of(n);
        float *p = FLOATS((size_t)n), *grad = FLOATS((size_t)n), *m = FLOATS((size_t)n), *v = FLOATS((size_t)n);
        double *want = DOUBLES((size_t)n), *want_m = DOUBLES((size_t)n), *want_v = DOUBLES((size_t)n);
        double *size_m = DOUBLES((size_t)n), *size_p = DOUBLES((size_t)n);
        for (int i = 0; i < n; i++) {
            p[i] = (float)random_normal(&r);
            grad[i] = (float)random_normal(&r);
            m[i] = 0.1f * (float)random_normal(&r);
            v[i] = 0.01f * (float)random_real(&r);
            want_m[i] = m[i];
            want_v[i] = v[i];
            size_m[i] = fabs(m[i]) + fabs(grad[i]);
            want[i] = adamw_formula(p[i], &want_m[i], &want_v[i], grad[i], &a);
            size_p[i] = fabs(p[i]) + 1e-3 * size_m[i] / sqrt(want_v[i]) * 30;
        }
        const bool masters = dtype == DTYPE_BF16;
        float *rounded = FLOATS((size_t)n);
        for (int i = 0; i < n; i++) rounded[i] = stored(p[i]);
        Floats *dg = floats(grad, (size_t)n), *dm = floats(m, (size_t)n), *dv = floats(v, (size_t)n);
        Floats *master = masters ? floats(p, (size_t)n) : NULL;
        Weights *w = weights(rounded, (size_t)n);
        a.weights = w;
        a.master = master;
        a.grad = dg;
        a.m = dm;
        a.v = dv;
        a.first = 8 * 5;
        B->adamw(D, &a);
        check("m", fetch(dm, (size_t)n), want_m, size_m, 8, 0, (size_t)n);
        check("v", fetch(dv, (size_t)n), want_v, NULL, 16, 0, (size_t)n);
        const float *got = masters ? fetch(master, (size_t)n) : fetch(w, (size_t)n);
        check("p", got, want, size_p, 32, 0, (size_t)n);
        if (!masters) continue;
        /* the weight is one of the two bf16 neighbours of its master, and does not depend on how slices are cut */
        const float *weight = fetch_narrow(w, (size_t)n);
        for (int i = 0; i < n; i++) {
            const double gap = fabs((double)weight[i] - got[i]), unit = ldexp(1, ilogb(got[i]) - 7);
            if (!(gap < unit)) fail_msg("weight %d is %.9g, its master %.9g", i, weight[i], got[i]);
        }
        const int cut = n / 3;
        Floats *again = floats(p, (size_t)n), *m2 = floats(m, (size_t)n), *v2 = floats(v, (size_t)n);
        Weights *w2 = weights(rounded, (size_t)n);
        for (int part = 0; part < 2; part++) {
            const size_t first = part ? (size_t)cut : 0, count = part ? (size_t)(n - cut) : (size_t)cut;
            AdamW half = a;
            half.n = count;
            half.first = a.first + first;
            half.weights = weights_at(B, w2, first);
            half.master = floats_at(again, first);
            half.grad = floats_at(dg, first);
            half.m = floats_at(m2, first);
            half.v = floats_at(v2, first);
            B->adamw(D, &half);
        }
        assert_memory_equal(fetch_narrow(w2, (size_t)n), weight, (size_t)n * sizeof(float));
        assert_memory_equal(fetch(again, (size_t)n), got, (size_t)n * sizeof(float));
    }
}

/* Stochastic rounding goes up and down with the right probabilities: the mean of many weights is the mean of their
 * masters. */
static void test_stochastic_rounding(void **state) {
    (void)state;
    enum { N = 1 << 15, STEPS = 4 };
    if (dtype != DTYPE_BF16) return;
    float *p = FLOATS(N), *zero = FLOATS(N);
    for (int i = 0; i < N; i++) p[i] = (i % 2 ? -1.0f : 1.0f) * (1.0f + 0.3f * 0x1p-7f); /* 0.3 of the way up */
    double away = 0;
    int same = 0;
    float *before = NULL;
    for (int step = 1; step <= STEPS; step++) {
        AdamW a = adamw_of(N);
        a.lr = 0;
        a.step = step;
        Floats *master = floats(p, N);
        Weights *w = weights(zero, N);
        a.weights = w;
        a.master = master;
        a.grad = floats(zero, N);
        a.m = floats(zero, N);
        a.v = floats(zero, N);
        B->adamw(D, &a);
        float *got = fetch_narrow(w, N);
        for (int i = 0; i < N; i++) {
            assert_true(fabsf(got[i]) == 1.0f || fabsf(got[i]) == 1.0f + 0x1p-7f);
            away += fabsf(got[i]) > 1.0f;
            same += before && got[i] == before[i];
        }
        before = got;
    }
    const double draws = (double)N * STEPS, deviation = sqrt(0.3 * 0.7 / draws);
    assert_true(fabs(away / draws - 0.3) < 5 * deviation);
    /* another step draws other bits: two steps agree in 0.3^2 + 0.7^2 of all weights */
    const double pairs = (double)N * (STEPS - 1);
    assert_true(fabs(same / pairs - 0.58) < 5 * sqrt(0.58 * 0.42 / pairs));
}

static void test_square_sum(void **state) {
    (void)state;
    Random r = random_start(10, 0);
    const size_t counts[] = {0, 1, 1000, 65536, 65536 * 2 + 3};
    for (int k = 0; k < 5; k++) {
        const size_t n = counts[k];
        float *x = FLOATS(n + 1);
        double want = 0;
        for (size_t i = 0; i < n; i++) {
            x[i] = (float)random_normal(&r);
            want += (double)x[i] * x[i];
        }
        Floats *device = floats(x, n + 1), *moved = floats(NULL, n + 2);
        B->upload(D, floats_at(moved, 1), x, n * sizeof *x); /* not aligned to 16 bytes */
        const double got = B->square_sum(D, device, n), again = B->square_sum(D, floats_at(moved, 1), n);
        assert_true(fabs(got - want) <= 1e-12 * want && fabs(again - want) <= 1e-12 * want);
        assert_true(B->square_sum(D, device, n) == got);
    }
    const float bad[] = {1, NAN, 2, INFINITY};
    assert_true(isnan(B->square_sum(D, floats(bad, 2), 2)));
    assert_true(isinf(B->square_sum(D, floats(bad + 2, 2), 2)));
}

/* ==== Memory ==== */

static void test_transfers(void **state) {
    (void)state;
    const size_t n = (5u << 20) + 12345; /* 20 MB: more than the staging buffer holds */
    float *x = (float *)xmalloc(n * sizeof *x), *back = (float *)xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)i * 0.25f; /* no two pieces are alike */
    Error e;
    void *memory = B->alloc(D, n * sizeof *x, "a test", &e);
    reorder(1); /* copies are made as late as the stream's order allows */
    B->upload(D, memory, x, n * sizeof *x);
    x[0] = 77;
    x[n - 1] = 77; /* the upload has the contents from the time of the call */
    B->download(D, back, memory, n * sizeof *x);
    assert_true(back[0] == 0 && back[n - 1] == (float)(n - 1) * 0.25f);
    x[0] = back[0];
    x[n - 1] = back[n - 1];
    assert_memory_equal(back, x, n * sizeof *x);
    B->zero(D, (char *)memory + 4, 8);
    B->download(D, back, memory, 16);
    assert_true(back[0] == x[0] && back[1] == 0 && back[2] == 0 && back[3] == x[3]);
    B->weights_upload(D, (Weights *)memory, x, n);
    B->weights_download(D, back, (Weights *)memory, n);
    for (size_t i = 0; i < n; i++) assert_true(back[i] == stored(x[i]));
    B->weights_release(D, (Weights *)memory, n);
    free(x), free(back);
    assert_true(B->memory_peak(D) >= n * 4);
}

/* A device of its own, so that its failure does not affect the other tests. */
static void test_out_of_memory(void **state) {
    (void)state;
    Error e;
    static const char *const cases[][2] = {{"activations", "--micro-tokens"},
                                           {"key/value cache", "--slots"},
                                           {"master weights", "--zero"},
                                           {"weights", "--dtype bf16"}};
    for (int i = 0; i < 4; i++) {
        assert_null(B->alloc(D, (size_t)1 << 50, cases[i][0], &e));
        assert_non_null(strstr(e.text, "1125899906842624 bytes"));
        assert_non_null(strstr(e.text, cases[i][0]));
        assert_non_null(strstr(e.text, "free"));
        assert_non_null(strstr(e.text, cases[i][1]));
    }
    assert_true(B->sync(D, &e)); /* a failed alloc is reported to the caller, and the device continues to work */
    float one = 1, back = 0;
    Floats *x = floats(&one, 1);
    B->download(D, &back, x, 4);
    assert_true(back == 1);
}

/* A failure inside an operation is sticky: sync() reports it with the request that failed, and nothing runs after
 * it. */
static void test_sticky_failure(void **state) {
    (void)state;
    Error e;
    Device *d;
    assert_true(B->open(&d, dtype, &e));
    float x[4] = {0};
    B->logits(d, NULL, NULL, NULL, 0, 0, 8, 8, 128); /* an empty operation is no failure */
    assert_true(B->sync(d, &e));
    void *memory = B->alloc(d, 64, "a test", &e);
    Norm norm = norm_of(NORM_LAYER, (Acts *)memory, (Acts *)memory, (Floats *)memory, (Floats *)memory,
                        (Weights *)memory, (Weights *)memory, 1 << 30, 1 << 30);
    norm.dout = norm.x;
    norm.dx = norm.out;
    norm.dw = norm.db = norm.rstd;
    B->norm_backward(d, &norm);
    assert_false(B->sync(d, &e));
    assert_non_null(strstr(e.text, "out of device memory"));
    assert_non_null(strstr(e.text, "a norm"));
    assert_null(strchr(e.text, '\n'));
    B->upload(d, memory, x, sizeof x);
    assert_true(isnan(B->square_sum(d, (Floats *)memory, 1)));
    assert_null(B->alloc(d, 64, "a test", &e));
    assert_false(B->sync(d, &e));
    B->close(d);
}

/* ==== Repeated steps ==== */

/* A step of a dozen operations on the same buffers with new data each time is run one by one, then captured, then
 * replayed as a graph. Each time it must give what the operations give when run alone. */
static void test_repeated_steps(void **state) {
    (void)state;
    enum { N = 6, C = 32, F = 64, V = 20, P = 12, STEPS = 6 };
    Random r = random_start(11, 0);
    Weights *wte = weights(noise(&r, V * C, 1), V * C), *wpe = weights(noise(&r, P * C, 1), P * C);
    Weights *w = weights(noise(&r, C, 1), C), *b = weights(noise(&r, C, 1), C);
    Weights *up = weights(noise(&r, F * C, 0.2), F * C), *up_b = weights(noise(&r, F, 1), F);
    Weights *down = weights(noise(&r, C * F, 0.2), C * F), *down_b = weights(noise(&r, C, 1), C);
    Acts *x[2], *h[2], *pre[2], *act[2], *delta[2], *rows[2];
    Floats *mean[2], *rstd[2];
    Ints *token[2], *position[2], *row[2];
    for (int k = 0; k < 2; k++) {
        x[k] = acts(NULL, N, C);
        h[k] = acts(NULL, N, C);
        pre[k] = acts(NULL, N, F);
        act[k] = acts(NULL, N, F);
        delta[k] = acts(NULL, N, C);
        rows[k] = acts(NULL, 2, C);
        mean[k] = floats(NULL, N);
        rstd[k] = floats(NULL, N);
        token[k] = ints(NULL, N);
        position[k] = ints(NULL, N);
        row[k] = ints(NULL, 2);
    }
    for (int step = 0; step < STEPS; step++) {
        const int32_t *tokens = picks(&r, N, V), *positions = picks(&r, N, P), *wanted = picks(&r, 2, N);
        float *got[2];
        Error e;
        if (host_seed) host_seed((uint64_t)step % SEEDS);
        for (int k = 0; k < 2; k++) {
            const bool apart = k == 1; /* waits after each operation, so nothing is captured */
            B->upload(D, token[k], tokens, N * sizeof(int32_t));
            B->upload(D, position[k], positions, N * sizeof(int32_t));
            B->embed_forward(D, x[k], wte, wpe, token[k], position[k], 1, N, C);
            if (apart) assert_true(B->sync(D, &e));
            Norm norm = norm_of(NORM_LAYER, x[k], h[k], mean[k], rstd[k], w, b, N, C);
            B->norm_forward(D, &norm);
            norm.delta = delta[k];
            norm.sum = x[k];
            if (apart) assert_true(B->sync(D, &e));
            for (int layer = 0; layer < 3; layer++) {
                B->linear_gelu_forward(D, pre[k], act[k], h[k], up, up_b, N, C, F);
                if (apart) assert_true(B->sync(D, &e));
                B->linear_forward(D, delta[k], act[k], down, down_b, N, F, C);
                if (apart) assert_true(B->sync(D, &e));
                B->norm_forward(D, &norm);
                if (apart) assert_true(B->sync(D, &e));
            }
            B->upload(D, row[k], wanted, 2 * sizeof(int32_t)); /* in the middle of a step */
            B->gather_rows(D, rows[k], h[k], row[k], 2, C);
            got[k] = fetch_narrow(rows[k], 2 * C);
        }
        assert_memory_equal(got[0], got[1], 2 * C * sizeof(float));
        assert_true(isfinite(got[0][0]));
    }
}

#define TESTS                                                                                                          \
    TEST(test_layernorm_forward), TEST(test_layernorm_backward), TEST(test_rmsnorm_forward),                           \
        TEST(test_rmsnorm_backward), TEST(test_rmsnorm_variants), TEST(test_layernorm_fresh), TEST(test_rotary),       \
        TEST(test_embed), TEST(test_embed_scaled), TEST(test_add), TEST(test_rows), TEST(test_noise),                  \
        TEST(test_linear_forward), TEST(test_linear_backward), TEST(test_linear_anywhere), TEST(test_gelu),            \
        TEST(test_gate), TEST(test_quantized), TEST(test_lora), TEST(test_lora_scratch), TEST(test_frozen),            \
        TEST(test_divergence), TEST(test_adamw), TEST(test_stochastic_rounding), TEST(test_square_sum),                \
        TEST(test_transfers), TEST(test_out_of_memory), TEST(test_sticky_failure), TEST(test_repeated_steps)

int main(void) {
    const struct CMUnitTest float32[] = {TESTS}, bf16[] = {TESTS};
    return cmocka_run_group_tests_name("float32", float32, open_float32, close_device) +
           cmocka_run_group_tests_name("bf16", bf16, open_bf16, close_device);
}
