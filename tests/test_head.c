/* test_head.c - the language-model head and sampling of backend.h against the formulas in float64. */
#include "../llmc/base/error.h"    /* Error */
#include "../llmc/base/random.h"   /* Random, random_start, random_below, random_normal, ... */
#include "../llmc/cpu/head.h"      /* head_chunk_rows, HEAD_CHUNK, sample_descending, sample_kth_largest */
#include "../llmc/model/backend.h" /* Device, QuantMatrix, Draw, Floats, ... */
#include "arrays.h"                /* FLOATS, DOUBLES, INTS, picks, ... */
#include "cpu_device.h"            /* B, D, close_device, open_device */
#include "device.h"                /* fetch, ints, floats, TEST, ... */
#include "quant_blocks.h"          /* quant_random */
#include "sampling.h"              /* HOW, How */

/* ==== Head ==== */

typedef struct HeadProblem {
    int R, C, V, Vp;
    float temperature, cap;
    float *h, *wte, *dlogp, *dentropy, *dwte; /* dwte: its earlier contents */
    int32_t *target;
    const QuantMatrix *matrix; /* has the values of wte, which is then not on the device; NULL: wte is */
} HeadProblem;

static HeadProblem head_problem(Random *r, int R, int C, int V, int Vp, float temperature, double amplitude) {
    HeadProblem p = {.R = R, .C = C, .V = V, .Vp = Vp, .temperature = temperature};
    p.h = noise(r, (size_t)(R * C), 1);
    p.wte = noise(r, (size_t)Vp * (size_t)C, amplitude);
    p.dlogp = noise(r, (size_t)R, 1);
    p.dentropy = noise(r, (size_t)R, 0.5);
    p.dwte = FLOATS((size_t)Vp * (size_t)C);
    p.target = picks(r, (size_t)R, V);
    for (int i = 0; i < V * C; i++) p.dwte[i] = (float)random_normal(r);
    return p;
}

/* Computes all outputs of the head from the formula in float64 and compares the device's. slack: permitted error of
 * values and of gradients, in units of rounding. */
static void check_head(Device *d, const HeadProblem *p, bool entropy_gradient, double slack, double gradient_slack) {
    const int R = p->R, C = p->C, V = p->V;
    const size_t table = (size_t)p->Vp * (size_t)C, used = (size_t)(V * C);
    Weights *wte = p->matrix ? NULL : device_words(p->wte, table, table, false);
    Acts *h = acts(p->h, R, C), *dh = acts(NULL, R, C);
    Floats *logp = floats(NULL, (size_t)R), *entropy = floats(NULL, (size_t)R), *dwte = floats(p->dwte, table);
    Ints *argmax = ints(NULL, (size_t)R), *target = ints(p->target, (size_t)R);
    Head a = {.rows = R,
              .channels = C,
              .vocab = V,
              .padded_vocab = p->Vp,
              .temperature = p->temperature,
              .cap = p->cap,
              .h = h,
              .weight = wte,
              .matrix = p->matrix,
              .target = target,
              .logp = logp,
              .entropy = entropy,
              .argmax = argmax};
    B->head(d, &a);
    const float *logp_only = fetch(logp, (size_t)R), *entropy_only = fetch(entropy, (size_t)R);
    const int32_t *most = (const int32_t *)fetch(argmax, (size_t)R);
    double *z = DOUBLES((size_t)V), *dz = DOUBLES((size_t)V), *slope = DOUBLES((size_t)V), *want = DOUBLES((size_t)R),
           *want_entropy = DOUBLES((size_t)R);
    double *size = DOUBLES((size_t)R);
    Sum sh = sums((size_t)(R * C), NULL), sw = sums(used, p->dwte);
    for (int r = 0; r < R; r++) {
        double max = -INFINITY, sum = 0, entropy_r = 0, z_size = 1;
        for (int v = 0; v < V; v++) {
            double magnitude = 0;
            z[v] = 0;
            for (int c = 0; c < C; c++) {
                const double term = (double)p->h[r * C + c] * p->wte[v * C + c];
                z[v] += term;
                magnitude += fabs(term);
            }
            slope[v] = 1;
            if (p->cap > 0) {
                const double bent = tanh(z[v] / p->cap);
                slope[v] = 1 - bent * bent;
                z[v] = p->cap * bent;
                magnitude += fabs(z[v]);
            }
            z[v] /= p->temperature;
            z_size = fmax(z_size, magnitude / p->temperature);
            max = fmax(max, z[v]);
        }
        for (int v = 0; v < V; v++) sum += exp(z[v] - max);
        const double log_sum = max + log(sum);
        for (int v = 0; v < V; v++) entropy_r -= exp(z[v] - log_sum) * (z[v] - log_sum);
        want[r] = z[p->target[r]] - log_sum;
        want_entropy[r] = entropy_r;
        size[r] = z_size * (C + 4) + fabs(want[r]) + entropy_r;
        if (!(z[most[r]] >= max - 2 * U * z_size * (C + 4)))
            fail_msg("argmax %d of row %d is not the largest", most[r], r);
        for (int v = 0; v < V; v++) {
            const double lp = z[v] - log_sum, q = exp(lp), g = p->dlogp[r], e = entropy_gradient ? p->dentropy[r] : 0;
            dz[v] = (g * ((v == p->target[r]) - q) - e * q * (lp + entropy_r)) * slope[v] / p->temperature;
            const double dz_size = (fabs(g) * ((v == p->target[r]) + q * (1 + size[r] / 8)) +
                                    fabs(e) * q * (1 + fabs(lp) + entropy_r) * (1 + size[r] / 8)) /
                                   p->temperature;
            for (int c = 0; c < C; c++) {
                sh.value[r * C + c] += dz[v] * p->wte[v * C + c];
                sh.size[r * C + c] += dz_size * fabs(p->wte[v * C + c]);
                sw.value[v * C + c] += dz[v] * p->h[r * C + c];
                sw.size[v * C + c] += dz_size * fabs(p->h[r * C + c]);
            }
        }
    }
    check("logp", logp_only, want, size, slack, (size_t)R);
    check("entropy", entropy_only, want_entropy, size, slack, (size_t)R);
    a.dlogp = floats(p->dlogp, (size_t)R);
    a.dentropy = entropy_gradient ? floats(p->dentropy, (size_t)R) : NULL;
    a.dh = dh;
    a.dweight = p->matrix ? NULL : dwte;
    B->head(d, &a);
    assert_memory_equal(fetch(logp, (size_t)R), logp_only,
                        (size_t)R * sizeof(float)); /* requesting gradients changes no value */
    check("dh", fetch(dh, (size_t)(R * C)), sh.value, sh.size, gradient_slack + V, (size_t)(R * C));
    Floats *logits = floats(NULL, (size_t)(R * V));
    if (p->matrix) B->quant_logits(d, logits, h, p->matrix, p->cap, R, C, V, p->Vp);
    else B->logits(d, logits, h, wte, p->cap, R, C, V, p->Vp);
    Sum all = linear_reference(p->h, p->wte, NULL, R, C, V, same);
    for (int i = 0; p->cap > 0 && i < R * V; i++) all.value[i] = p->cap * tanh(all.value[i] / p->cap);
    sum_check("logits", fetch(logits, (size_t)(R * V)), all, C, (size_t)(R * V));
    if (p->matrix) return;
    const float *got = fetch(dwte, table);
    check("dwte", got, sw.value, sw.size, gradient_slack + R, used);
    for (size_t i = used; i < table; i++) assert_true(got[i] == 0); /* padding gets no gradient */
    for (size_t i = 0; i < used; i++) {
        sw.value[i] += sw.value[i] - p->dwte[i];
        sw.size[i] *= 2;
    }
    a.entropy = NULL;
    a.argmax = NULL; /* a second call: dh is set, dwte is added to */
    B->head(d, &a);
    check("dh again", fetch(dh, (size_t)(R * C)), sh.value, sh.size, gradient_slack + V, (size_t)(R * C));
    check("dwte again", fetch(dwte, table), sw.value, sw.size, gradient_slack + 2 * R, used);
    const float *before = fetch(dwte, table);
    a.dweight = NULL; /* not requested */
    B->head(d, &a);
    assert_memory_equal(fetch(dwte, table), before, table * sizeof(float));
    for (size_t i = 0; i < used; i++) sw.value[i] = 0.5 * (sw.value[i] - p->dwte[i]);
    B->store_next(d, dwte);
    a.dweight = dwte; /* a call that stores it */
    B->head(d, &a);
    check("dwte stored", fetch(dwte, table), sw.value, sw.size, gradient_slack + R, used);
}

static void test_head(void **state) {
    (void)state;
    Random r = random_start(13, 0);
    static const struct {
        int R, C, V, Vp;
        float temperature;
        double amplitude;
    } shape[] = {{1, 24, 257, 384, 1, 0.3},   {37, 24, 257, 384, 0.7f, 0.3}, {16, 8, 5, 128, 2, 1},
                 {19, 16, 128, 128, 1, 0.5},  {3, 24, 257, 384, 0.1f, 0.5},  {33, 4, 1, 128, 1, 1},
                 {7, 24, 5000, 5120, 1, 0.3}, {5, 24, 257, 384, 1, 8}};
    Device *d;
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        HeadProblem p =
            head_problem(&r, shape[s].R, shape[s].C, shape[s].V, shape[s].Vp, shape[s].temperature, shape[s].amplitude);
        for (int i = p.V * p.C; i < p.Vp * p.C; i++) p.wte[i] *= 100; /* padding rows must have no effect */
        check_head(d, &p, s % 2, 4, 64);
        p.cap = 2; /* bends most of these logits */
        check_head(d, &p, s % 2, 4, 64);
    }
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* Rows that need several chunks of logits: the padded vocabulary is so wide that 50 rows are 4 chunks. */
static void test_head_chunks(void **state) {
    (void)state;
    Random r = random_start(14, 0);
    enum { R = 50, C = 2, V = 61, VP = 1 << 20 };
    HeadProblem p = head_problem(&r, R, C, V, 128, 0.9f, 0.7);
    float *wide = FLOATS((size_t)VP * C), *dwide = FLOATS((size_t)VP * C);
    memcpy(wide, p.wte, V * C * sizeof *wide);
    memcpy(dwide, p.dwte, V * C * sizeof *wide);
    p.wte = wide;
    p.dwte = dwide;
    p.Vp = VP;
    assert_true(head_chunk_rows(R, VP) < R / 2);
    Device *d;
    Error e;
    assert_true(B->open(&d, DTYPE_FLOAT32, &e));
    check_head(d, &p, true, 4, 64);
    assert_true(B->sync(d, &e));
    B->close(d);
    for (int rows = 1; rows < 40000;
         rows += 1 + rows / 7) /* the chunks cover all rows, are multiples of the alignment, and are within the limit */
        for (int vp = 128; vp <= 1 << 22; vp *= 2) {
            const int chunk = head_chunk_rows(rows, vp);
            assert_true(chunk > 0 && (chunk % ROW_ALIGN == 0 || (chunk >= rows && chunk < ROW_ALIGN)));
            assert_true(chunk <= ROW_ALIGN || (size_t)chunk * (size_t)vp <= HEAD_CHUNK);
        }
}

/* A matrix of Vp rows in blocks of two types, and rows of padding as floats. wte: receives its values. */
static QuantMatrix head_blocks(Random *r, const QuantType type[2], int C, int V, int Vp, float *wte) {
    QuantMatrix q = {.parts = 3, .type = {(int)type[0], (int)type[1], QUANT_F32}, .rows = {V - V / 3, V / 3, Vp - V}};
    for (int part = 0, row = 0; part < q.parts; row += q.rows[part++])
        q.blocks[part] = (const Blocks *)quant_random(r, (QuantType)q.type[part], (size_t)(q.rows[part] * C),
                                                      wte + (size_t)row * (size_t)C);
    return q;
}

static void head_blocks_free(QuantMatrix *q) {
    for (int part = 0; part < q->parts; part++) free((void *)(uintptr_t)q->blocks[part]);
}

/* An output matrix in blocks gives the results of its values: few rows, for which there is other code than for many, and
 * rows of types without blocks that are no multiple of 32 elements. */
static void test_head_blocks(void **state) {
    Random r = random_start(19, 0);
    static const struct {
        int R, C;
        QuantType type[2];
    } shape[] = {
        {1, 64, {QUANT_Q8_0, QUANT_Q4_0}},   {3, 96, {QUANT_Q4_1, QUANT_Q5_0}}, {2, 256, {QUANT_Q4_K, QUANT_Q6_K}},
        {4, 70, {QUANT_F16, QUANT_BF16}},    {1, 64, {QUANT_F16, QUANT_BF16}},  {9, 64, {QUANT_Q8_0, QUANT_BF16}},
        {40, 256, {QUANT_Q5_K, QUANT_Q5_1}}, {70, 41, {QUANT_F16, QUANT_F32}},  {130, 96, {QUANT_Q8_0, QUANT_Q4_1}}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        HeadProblem p = head_problem(&r, shape[s].R, shape[s].C, 257, 384, s % 2 ? 0.7f : 1, 1);
        for (int i = 0; i < p.R * p.C; i++) p.h[i] *= 0.1f; /* logits of a size of about 1 */
        QuantMatrix q = head_blocks(&r, shape[s].type, p.C, p.V, p.Vp, p.wte);
        p.matrix = &q;
        check_head(D, &p, s % 2, 4, 64);
        p.cap = 2;
        check_head(D, &p, s % 2 == 0, 4, 64);
        head_blocks_free(&q);
        assert_int_equal(check_memory(state), 0); /* also frees it */
    }
}

/* The same in bfloat16, with values that it represents, for more tokens than are processed at a time. */
static void test_head_blocks_bf16(void **state) {
    Device *d;
    Error e;
    if (!B->open(&d, DTYPE_BF16, &e)) skip();
    Random r = random_start(20, 0);
    static const QuantType type[2] = {QUANT_BF16, QUANT_F32};
    for (int rows = 1; rows < 200; rows += 66) {
        HeadProblem p = head_problem(&r, rows, 41, 4500, 4608, 1, 1);
        for (int i = 0; i < p.R * p.C; i++) p.h[i] = (float)bf16(0.1f * p.h[i]);
        QuantMatrix q = head_blocks(&r, type, p.C, p.V, p.Vp, p.wte);
        for (int i = 0; i < p.Vp * p.C; i++) p.wte[i] = (float)bf16(p.wte[i]);
        for (int part = 1; part < 3; part++)
            memcpy((void *)(uintptr_t)q.blocks[part], p.wte + (part == 1 ? 3000 : 4500) * p.C,
                   (size_t)(q.rows[part] * p.C) * sizeof(float));
        p.matrix = &q;
        check_head(d, &p, rows > 1, 4, 0x1p16);
        head_blocks_free(&q);
        assert_int_equal(check_memory(state), 0); /* also frees it */
    }
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* Operands that bfloat16 represents, so that logits equal those of float32. The gradient of the logits is rounded to 8
 * bits. Shapes: odd sizes, one row, more tokens than the tiles process at a time, more rows than they do, and rows whose largest
 * logit is so far above those of the first tokens that its exponential overflows. */
static void test_head_bf16(void **state) {
    (void)state;
    Device *d;
    Error e;
    if (!B->open(&d, DTYPE_BF16, &e)) skip();
    Random r = random_start(15, 0);
    static const struct {
        int R, C, V, Vp;
        float temperature;
        double amplitude;
        int small; /* the first tokens, whose logits are 0: the others' are far above */
    } shape[] = {{37, 24, 257, 384, 0.8f, 0.3, 0}, {33, 41, 4500, 4608, 1, 0.3, 0}, {1, 8, 5, 128, 2, 1, 0},
                 {3, 24, 257, 384, 0.1f, 0.5, 0},  {5, 24, 257, 384, 1, 8, 0},      {4131, 5, 37, 128, 0.9f, 1, 0},
                 {43, 24, 257, 384, 1, 8, 32},     {37, 24, 3000, 3072, 1, 8, 40}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        HeadProblem p =
            head_problem(&r, shape[s].R, shape[s].C, shape[s].V, shape[s].Vp, shape[s].temperature, shape[s].amplitude);
        for (int i = 0; i < p.R * p.C; i++) p.h[i] = (float)bf16(p.h[i]);
        for (int i = 0; i < p.V * p.C; i++) p.wte[i] = (float)bf16(p.wte[i]);
        for (int i = p.V * p.C; i < p.Vp * p.C; i++) p.wte[i] *= 100; /* padding rows must have no effect */
        for (int i = 0; i < shape[s].small * p.C; i++) p.wte[i] = 0;
        check_head(d, &p, s % 2 == 0, 4, 0x1p16);
        p.cap = 2;
        check_head(d, &p, s % 2, 4, 0x1p16);
    }
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* The head in bfloat16 gives the same bits with any number of threads. */
static void test_head_bf16_threads(void **state) {
    (void)state;
    Device *d;
    Error e;
    enum { R = 301, C = 40, V = 4200, VP = 4224 };
    if (!B->open(&d, DTYPE_BF16, &e)) skip();
    Random r = random_start(16, 0);
    const HeadProblem p = head_problem(&r, R, C, V, VP, 0.9f, 0.5);
    const int threads = omp_get_max_threads();
    const float *want = NULL;
    for (int t = 1; t <= 3; t++) {
        omp_set_num_threads(t);
        Floats *logp = floats(NULL, R), *dweight = floats(p.dwte, VP * C);
        Acts *dh = acts(NULL, R, C);
        const Head a = {.rows = R,
                        .channels = C,
                        .vocab = V,
                        .padded_vocab = VP,
                        .temperature = p.temperature,
                        .h = acts(p.h, R, C),
                        .weight = weights(p.wte, VP * C),
                        .target = ints(p.target, R),
                        .logp = logp,
                        .dlogp = floats(p.dlogp, R),
                        .dh = dh,
                        .dweight = dweight};
        B->head(d, &a);
        float *got = FLOATS(R + R * C + VP * C);
        memcpy(got, fetch(logp, R), R * sizeof *got);
        memcpy(got + R, fetch(dh, R * C), (size_t)(R * C) * sizeof *got);
        memcpy(got + R + R * C, fetch(dweight, VP * C), (size_t)(VP * C) * sizeof *got);
        if (want) assert_memory_equal(got, want, (size_t)(R + R * C + VP * C) * sizeof *got);
        want = got;
    }
    omp_set_num_threads(threads);
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* Extremes: logits that are a thousand apart, equal logits, NaN. argmax returns the first of several. */
static void check_extremes(Device *d) {
    enum { V = 10, VP = 128, R = 4 };
    float wte[VP * R] = {0}, h[R * R] = {0};
    for (int i = 0; i < R; i++) h[i * R + i] = 1; /* z[r][v] = wte[v][r] */
    wte[3 * R] = 1000;
    wte[4 * R] = -1000;
    wte[2 * R + 2] = wte[7 * R + 2] = 5;
    for (int v = 0; v < V; v++) wte[v * R + 3] = v == 6 ? NAN : 1;
    static const int32_t target[R] = {4, 0, 7, 6};
    const float dlogp[R] = {1, 1, 1, 1};
    Acts *dh = acts(NULL, R, R);
    Floats *logp = floats(NULL, R), *entropy = floats(NULL, R);
    Ints *argmax = ints(NULL, R);
    const Head a = {.rows = R,
                    .channels = R,
                    .vocab = V,
                    .padded_vocab = VP,
                    .temperature = 1,
                    .h = acts(h, R, R),
                    .weight = weights(wte, VP * R),
                    .target = ints(target, R),
                    .logp = logp,
                    .entropy = entropy,
                    .argmax = argmax,
                    .dlogp = floats(dlogp, R),
                    .dentropy = floats(dlogp, R),
                    .dh = dh};
    B->head(d, &a);
    const float *lp = fetch(logp, R), *en = fetch(entropy, R), *g;
    const int32_t *most = (const int32_t *)fetch(argmax, R);
    /* h is one-hot, but 0 * NaN is NaN: column 3 of the other rows, and therefore their logits, are NaN too */
    assert_true(isnan(lp[3]) && isnan(en[3]));
    for (int i = 0; i < R; i++) assert_in_range(most[i], 0, V - 1);
    for (int v = 0; v < V; v++) wte[v * R + 3] = 1;
    B->weights_upload(d, (Weights *)(uintptr_t)a.weight, wte, VP * R);
    B->head(d, &a);
    lp = fetch(logp, R);
    en = fetch(entropy, R);
    g = fetch(dh, R * R);
    most = (const int32_t *)fetch(argmax, R);
    assert_true(lp[0] == -2000 && en[0] == 0);
    assert_true(fabs(lp[1] + log(10)) < 1e-6 && fabs(en[1] - log(10)) < 1e-6);
    assert_true(most[0] == 3 && most[1] == 0 && most[2] == 2 && most[3] == 0);
    for (int i = 0; i < R * R; i++) assert_true(isfinite(g[i]));
    const Head none = {.rows = 0, .channels = R, .vocab = V, .padded_vocab = VP, .temperature = 1};
    B->head(d, &none);
}

static void test_head_extremes(void **state) {
    (void)state;
    Device *d;
    Error e;
    check_extremes(D);
    if (!B->open(&d, DTYPE_BF16, &e)) return;
    check_extremes(d);
    assert_true(B->sync(d, &e));
    B->close(d);
}

/* ==== Sampling ==== */

/* The rule of backend.h in float64: the kept tokens and their probabilities. y: logits after penalty and temperature.
 * Returns the relative margin of the closest decision. */
static double keep(const Draw *a, const double *y, int V, double *probability) {
    double max = -INFINITY, sum = 0, margin = 1;
    bool kept[512];
    assert_true(V <= 512);
    for (int v = 0; v < V; v++) {
        max = fmax(max, y[v]);
        kept[v] = true;
    }
    if (a->top_k > 0 && a->top_k < V)
        for (int v = 0; v < V; v++) {
            int above = 0;
            for (int o = 0; o < V; o++) above += y[o] > y[v];
            kept[v] = above < a->top_k; /* tokens that tie with the last one are kept */
        }
    if (a->top_p < 1) {
        bool stays[512];
        double all = 0;
        for (int v = 0; v < V; v++) all += kept[v] ? exp(y[v] - max) : 0;
        for (int v = 0; v < V; v++) {
            double above = 0; /* total probability of all likelier tokens: v is kept if this is below top_p */
            for (int o = 0; o < V; o++) above += kept[o] && y[o] > y[v] ? exp(y[o] - max) / all : 0;
            stays[v] = kept[v] && (above < (double)a->top_p || y[v] == max);
            if (kept[v] && y[v] != max) margin = fmin(margin, fabs(above - (double)a->top_p));
        }
        memcpy(kept, stays, sizeof kept);
    }
    if (a->min_p > 0)
        for (int v = 0; v < V; v++) {
            margin = y[v] == max ? margin : fmin(margin, fabs(y[v] - max - log(a->min_p)));
            kept[v] &= y[v] == max || exp(y[v] - max) >= (double)a->min_p;
        }
    for (int v = 0; v < V; v++) sum += probability[v] = kept[v] ? exp(y[v] - max) : 0;
    for (int v = 0; v < V; v++) probability[v] /= sum;
    return margin;
}

static void test_sample(void **state) {
    (void)state;
    Random r = random_start(16, 0);
    enum { COLUMNS = 20, V = 257, VP = 384, R = 150, HISTORY = 9 };
    float *h = FLOATS(R * COLUMNS), *wte = FLOATS(VP * COLUMNS);
    for (int i = 0; i < VP * COLUMNS; i++) {
        const int column = i % COLUMNS;
        /* a few columns have ties: logits in steps of 1/2 or of 2 */
        const double x = 2 * random_normal(&r), step = column < 4 ? 0.5 : column < 6 ? 2 : 0;
        wte[i] = i / COLUMNS >= V ? 50 : (float)(step > 0 ? step * nearbyint(x / step) : x);
    }
    for (int i = 0; i < R; i++) h[i * COLUMNS + i % COLUMNS] = 1; /* the logits of row i are exactly a column of wte */
    int32_t *stream = INTS(2 * R), *index = picks(&r, R, 1000), *history = picks(&r, R * HISTORY, V),
            *count = picks(&r, R, HISTORY + 1);
    for (int i = 0; i < R; i++) {
        stream[2 * i] = (int32_t)random_next(&r);
        stream[2 * i + 1] = (int32_t)random_next(&r);
        if (count[i] > 2) history[i * HISTORY + 1] = history[i * HISTORY]; /* seen twice, penalised once */
    }
    Acts *dev_h = acts(h, R, COLUMNS);
    Weights *dev_wte = weights(wte, VP * COLUMNS);
    int unclear = 0;
    for (size_t k = 0; k < 2 * sizeof HOW / sizeof *HOW; k++) { /* each setting without a cap, then with one */
        Floats *logp = floats(NULL, R), *kept_logp = floats(NULL, R);
        Ints *token = ints(NULL, R);
        const How how = HOW[k % (sizeof HOW / sizeof *HOW)];
        const float cap = k < sizeof HOW / sizeof *HOW ? 0 : 3;
        const Draw a = {.rows = R,
                        .cap = cap,
                        .channels = COLUMNS,
                        .vocab = V,
                        .padded_vocab = VP,
                        .temperature = how.temperature,
                        .top_p = how.top_p,
                        .min_p = how.min_p,
                        .repetition_penalty = how.penalty,
                        .top_k = how.top_k,
                        .seed = 0x123456789abcdef + k,
                        .h = dev_h,
                        .weight = dev_wte,
                        .stream = ints(stream, 2 * R),
                        .index = ints(index, R),
                        .history = how.penalty != 1 ? ints(history, R * HISTORY) : NULL,
                        .history_len = how.penalty != 1 ? ints(count, R) : NULL,
                        .history_stride = HISTORY,
                        .token = token,
                        .logp = logp,
                        .kept_logp = kept_logp};
        B->sample(D, &a);
        const int32_t *got = (const int32_t *)fetch(token, R);
        const float *got_logp = fetch(logp, R), *got_kept = fetch(kept_logp, R);
        for (int i = 0; i < R; i++) {
            double y[V], z[V], p[V], sum = 0, running = 0, margin = 1;
            const double t = how.temperature > 0 ? how.temperature : 1;
            for (int v = 0; v < V; v++) {
                z[v] = wte[v * COLUMNS + i % COLUMNS];
                if (cap > 0) z[v] = (float)(cap * tanh(z[v] / cap)); /* ties stay ties */
            }
            memcpy(y, z, sizeof y);
            if (a.history)
                for (int s = 0; s < count[i]; s++) {
                    const int v = history[i * HISTORY + s];
                    y[v] = z[v] > 0 ? z[v] / how.penalty : z[v] * how.penalty;
                }
            for (int v = 0; v < V; v++) {
                y[v] /= t;
                z[v] /= t;
                sum += exp(z[v]);
            }
            int expected = -1;
            if (how.temperature == 0) {
                for (int v = 0; v < V; v++)
                    if (expected < 0 || y[v] > y[expected]) expected = v;
            } else {
                margin = keep(&a, y, V, p);
                const uint64_t s = (uint64_t)(uint32_t)stream[2 * i + 1] << 32 | (uint32_t)stream[2 * i];
                const double u = random_uniform(a.seed, s, (uint64_t)index[i]);
                for (int v = 0; v < V && expected < 0; v++) {
                    running += p[v];
                    margin = p[v] > 0 ? fmin(margin, fabs(running - u)) : margin;
                    if (running > u) expected = v;
                }
            }
            if (margin < 1e-6) {
                unclear++;
                continue;
            }
            if (got[i] != expected) fail_msg("setting %zu, row %d: token %d, expected %d", k, i, got[i], expected);
            /* a sum of V floats may be off by V roundings; a logit by some of its own */
            const double roundings = V * 0x1p-24;
            assert_true(fabs(got_logp[i] - (z[got[i]] - log(sum))) < roundings + 2e-6 * (1 + fabs(z[got[i]])));
            const double kept = how.temperature == 0 ? 0 : log(p[got[i]]);
            assert_true(fabs(got_kept[i] - kept) < 2 * roundings + 4e-6 * (1 + fabs(kept)));
        }
    }
    if (unclear >= 20) fail_msg("%d rows cannot be decided", unclear);
    const Draw none = {.rows = 0, .channels = COLUMNS, .vocab = V, .padded_vocab = VP, .temperature = 1};
    B->sample(D, &none);
}

/* A row's draw depends neither on the other rows nor on chunks. */
static void test_sample_alone(void **state) {
    (void)state;
    Random r = random_start(17, 0);
    enum { C = 4, V = 50, VP = 1 << 20, R = 40 };
    float *h = noise(&r, R * C, 1), *wte = FLOATS((size_t)VP * C);
    for (int i = 0; i < V * C; i++) wte[i] = (float)random_normal(&r);
    int32_t *stream = INTS(2 * R), *index = INTS(R), all[R];
    for (int i = 0; i < R; i++) {
        stream[2 * i] = i;
        index[i] = 3;
    }
    Weights *dev_wte = weights(wte, (size_t)VP * C);
    Draw a = {.rows = R,
              .channels = C,
              .vocab = V,
              .padded_vocab = VP,
              .temperature = 1,
              .top_p = 0.9f,
              .repetition_penalty = 1,
              .seed = 5,
              .h = acts(h, R, C),
              .weight = dev_wte,
              .stream = ints(stream, 2 * R),
              .index = ints(index, R),
              .token = ints(NULL, R),
              .logp = floats(NULL, R)};
    assert_true(head_chunk_rows(R, VP) < R);
    B->sample(D, &a);
    B->download(D, all, a.token, sizeof all);
    for (int i = 0; i < R; i += 3) {
        int32_t one;
        a.rows = 1;
        a.h = acts(h + i * C, 1, C);
        a.stream = ints(stream + 2 * i, 2);
        a.token = ints(NULL, 1);
        B->sample(D, &a);
        B->download(D, &one, a.token, sizeof one);
        assert_int_equal(one, all[i]);
    }
}

/* Draws by a matrix in blocks are those by its values. */
static void test_sample_blocks(void **state) {
    (void)state;
    Random r = random_start(21, 0);
    enum { C = 64, V = 300, VP = 384, R = 40 };
    static const QuantType type[2] = {QUANT_Q8_0, QUANT_Q4_0};
    float *h = noise(&r, R * C, 0.3), *wte = FLOATS(VP * C);
    QuantMatrix q = head_blocks(&r, type, C, V, VP, wte);
    int32_t *stream = INTS(2 * R), *index = INTS(R), token[2][R];
    float logp[2][R];
    for (int i = 0; i < R; i++) stream[2 * i] = i;
    for (int rows = 1; rows <= R; rows += R - 1)
        for (int greedy = 0; greedy < 2; greedy++) {
            for (int blocks = 0; blocks < 2; blocks++) {
                const Draw a = {.rows = rows,
                                .channels = C,
                                .vocab = V,
                                .padded_vocab = VP,
                                .temperature = greedy ? 0 : 1,
                                .top_p = 1,
                                .repetition_penalty = 1,
                                .seed = 7,
                                .h = acts(h, R, C),
                                .weight = blocks ? NULL : weights(wte, VP * C),
                                .matrix = blocks ? &q : NULL,
                                .stream = ints(stream, 2 * R),
                                .index = ints(index, R),
                                .token = ints(NULL, R),
                                .logp = floats(NULL, R)};
                B->sample(D, &a);
                B->download(D, token[blocks], a.token, (size_t)rows * sizeof(int32_t));
                B->download(D, logp[blocks], a.logp, (size_t)rows * sizeof(float));
            }
            for (int i = 0; i < rows; i++) {
                assert_int_equal(token[0][i], token[1][i]);
                assert_true(fabs((double)logp[0][i] - (double)logp[1][i]) < 1e-5);
            }
        }
    head_blocks_free(&q);
}

/* The k-th largest value against sorting, with many ties. */
static void test_kth_largest(void **state) {
    (void)state;
    Random r = random_start(18, 0);
    for (int trial = 0; trial < 3000; trial++) {
        float x[60], sorted[60];
        const int n = 1 + (int)random_below(&r, 60), k = 1 + (int)random_below(&r, (uint64_t)n);
        const uint64_t values = 1 + random_below(&r, 70);
        for (int i = 0; i < n; i++) x[i] = sorted[i] = (float)random_below(&r, values);
        qsort(sorted, (size_t)n, sizeof *sorted, sample_descending);
        assert_true(sample_kth_largest(x, n, k) == sorted[k - 1]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_head),          TEST(test_head_chunks),      TEST(test_head_bf16),     TEST(test_head_bf16_threads),
        TEST(test_head_extremes), TEST(test_sample),           TEST(test_sample_alone),  TEST(test_kth_largest),
        TEST(test_head_blocks),   TEST(test_head_blocks_bf16), TEST(test_sample_blocks),
    };
    return cmocka_run_group_tests_name("head", tests, open_device, close_device);
}
