/* divergence.h - the divergence of two models' distributions on a backend, against the formulas in float64.
 *
 *     divergence_check(b, d, &(DivergenceShape){.R = 37, .C = 24, .V = 257, .Vp = 384, ...}, TOKEN_JSD, 64);
 *
 * divergence_formula() has the closed forms of the gradients; test_divergence.c compares them with difference quotients.
 */
#ifndef TESTS_DIVERGENCE_H
#define TESTS_DIVERGENCE_H

#include "../llmc/base/error.h"    /* xcalloc, Error */
#include "../llmc/base/random.h"   /* Random, random_below, random_normal, random_start */
#include "../llmc/model/backend.h" /* Floats, Weights, Ints, TokenDivergenceKind, ... */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* D of two distributions and its derivatives with respect to the logits of S before the temperature tau. */
static inline double divergence_formula(TokenDivergenceKind kind, const double *S, const double *T, int V, double b,
                                        double tau, double *dz) {
    double D = 0, mean = 0;
    for (int v = 0; v < V; v++) {
        const double M = kind == TOKEN_SKEW_REVERSE ? b * S[v] + (1 - b) * T[v] : b * T[v] + (1 - b) * S[v];
        const double kl_tm = T[v] > 0 ? T[v] * log(T[v] / M) : 0, kl_sm = S[v] > 0 ? S[v] * log(S[v] / M) : 0;
        double slope = 0; /* dD/dS_v */
        switch (kind) {
        case TOKEN_FORWARD_KL:
            D += T[v] > 0 ? T[v] * log(T[v] / S[v]) : 0;
            slope = -T[v] / S[v];
            break;
        case TOKEN_REVERSE_KL:
            D += S[v] > 0 ? S[v] * log(S[v] / T[v]) : 0;
            slope = log(S[v] / T[v]) + 1;
            break;
        case TOKEN_JSD:
            D += b * kl_tm + (1 - b) * kl_sm;
            slope = (1 - b) * log(S[v] / M);
            break;
        case TOKEN_TVD:
            D += fabs(S[v] - T[v]) / 2;
            slope = S[v] > T[v] ? 0.5 : -0.5;
            break;
        case TOKEN_SKEW_FORWARD:
            D += kl_tm;
            slope = -(1 - b) * T[v] / M;
            break;
        default:
            D += kl_sm;
            slope = log(S[v] / M) + 1 - b * S[v] / M;
            break;
        }
        dz[v] = S[v] > 0 ? slope : 0;
        mean += S[v] * dz[v];
    }
    for (int v = 0; v < V; v++) dz[v] = S[v] * (dz[v] - mean) / tau;
    if (kind == TOKEN_FORWARD_KL) /* also where S is 0 in float64 */
        for (int v = 0; v < V; v++) dz[v] = (S[v] - T[v]) / tau;
    return D;
}

typedef struct DivergenceShape {
    int R, C, V, Vp, teacher_C, teacher_Vp;
    float temperature, head_temperature, beta, cap, teacher_cap;
    double amplitude;
    int listed;  /* tokens of a list that is the teacher; 0: a model */
    bool blocks; /* the output matrices are in blocks, of F32; of a CPU */
} DivergenceShape;

enum { DIVERGENCE_HELD = 24 };

/* One call: its memory, and what it was made from. */
typedef struct DivergenceCall {
    const Backend *b;
    Device *d;
    Random random;
    void *held[DIVERGENCE_HELD];
    size_t stored[DIVERGENCE_HELD];
    int count;
} DivergenceCall;

static inline double divergence_bf16(double x) {
    int exponent;
    const double m = frexp(x, &exponent);
    return ldexp(nearbyint(m * 256), exponent - 8);
}

static inline void *divergence_alloc(DivergenceCall *c, size_t bytes, size_t stored) {
    Error e;
    void *memory = c->b->alloc(c->d, bytes, "a test", &e);
    assert_non_null(memory);
    assert_true(c->count < DIVERGENCE_HELD);
    c->stored[c->count] = stored;
    c->held[c->count++] = memory;
    return memory;
}

/* Uploads n values in the storage type, with room for whole blocks of rows. */
static inline void *divergence_narrow(DivergenceCall *c, const float *x, size_t n, size_t room) {
    void *memory = divergence_alloc(c, room * sizeof *x, n);
    c->b->weights_upload(c->d, (Weights *)memory, x, n);
    return memory;
}

/* Uploads n words, or fills them with NaN. */
static inline void *divergence_words(DivergenceCall *c, const void *x, size_t n) {
    void *memory = divergence_alloc(c, n * 4, 0);
    float *nan = (float *)xcalloc(n, sizeof *nan);
    for (size_t i = 0; i < n; i++) nan[i] = NAN;
    c->b->upload(c->d, memory, x ? x : nan, n * 4);
    free(nan);
    return memory;
}

/* n random numbers that bfloat16 represents; those from `used` on are large. */
static inline float *divergence_noise(DivergenceCall *c, size_t n, size_t used, double amplitude) {
    float *x = (float *)xcalloc(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)divergence_bf16(random_normal(&c->random) * (i < used ? amplitude : 100));
    return x;
}

static inline void divergence_free(DivergenceCall *c) {
    for (int i = 0; i < c->count; i++) {
        if (c->stored[i]) c->b->weights_release(c->d, (Weights *)c->held[i], c->stored[i]);
        else c->b->release(c->d, c->held[i]);
    }
}

/* One row of logits in float64: z = cap(h . w); *size: the sum of the absolute terms of the largest. */
static inline void divergence_logits(const float *h, const float *w, int C, int V, double cap, double *z, double *slope,
                                     double *size) {
    for (int v = 0; v < V; v++) {
        double magnitude = 0;
        z[v] = 0;
        for (int k = 0; k < C; k++) {
            z[v] += (double)h[k] * w[(size_t)v * (size_t)C + (size_t)k];
            magnitude += fabs((double)h[k] * w[(size_t)v * (size_t)C + (size_t)k]);
        }
        const double bent = cap > 0 ? tanh(z[v] / cap) : 0;
        slope[v] = 1 - bent * bent;
        if (cap > 0) z[v] = cap * bent;
        *size = fmax(*size, magnitude + (cap > 0 ? fabs(z[v]) : 0));
    }
}

/* Log-probabilities at a temperature; returns the entropy. */
static inline double divergence_softmax(const double *z, int V, double temperature, double *logp, double *p) {
    double max = -INFINITY, sum = 0, entropy = 0;
    for (int v = 0; v < V; v++) max = fmax(max, z[v]);
    for (int v = 0; v < V; v++) sum += exp((z[v] - max) / temperature);
    for (int v = 0; v < V; v++) {
        logp[v] = (z[v] - max) / temperature - log(sum);
        p[v] = exp(logp[v]);
        entropy -= p[v] > 0 ? p[v] * logp[v] : 0;
    }
    return entropy;
}

static inline void divergence_near(const char *what, const float *got, const double *want, const double *size,
                                   double slack, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const double allowed = slack * 0x1p-24 * size[i] + 1e-30;
        if (!(fabs(got[i] - want[i]) <= allowed))
            fail_msg("%s[%zu] is %.9g, expected %.9g within %.2g", what, i, got[i], want[i], allowed);
    }
}

/* The list of one row: the K likeliest of V tokens, their log-probabilities and that of all others, rounded. */
static inline void divergence_list(const double *t_log, int V, int K, int32_t *token, float *logp, float *rest) {
    double others = 0;
    for (int k = 0; k < K; k++) {
        token[k] = -1;
        for (int v = 0; v < V; v++) {
            bool taken = false;
            for (int j = 0; j < k; j++) taken = taken || token[j] == v;
            if (!taken && (token[k] < 0 || t_log[v] > t_log[token[k]])) token[k] = v;
        }
        logp[k] = (float)t_log[token[k]];
    }
    for (int v = 0; v < V; v++) {
        bool taken = false;
        for (int k = 0; k < K; k++) taken = taken || token[k] == v;
        others += taken ? 0 : exp(t_log[v]);
    }
    *rest = (float)log(others); /* log 0 is -inf */
}

/* D over the K + 1 outcomes of a list, and its derivatives by all logits. t_log: set to what the
 * logarithms of T would be if the other tokens had the proportions of S, for the bounds of rounding errors. */
static inline double divergence_listed(TokenDivergenceKind kind, const double *S, const double *s_log, double *t_log,
                                       int V, int K, const int32_t *token, const float *logp, float rest, double b,
                                       double tau, double *dz) {
    const int outcomes = K < V ? K + 1 : K;
    double *part = (double *)xcalloc((size_t)outcomes * 3, sizeof *part), *T = part + outcomes, *slope = T + outcomes;
    int *of = (int *)xcalloc((size_t)V, sizeof *of); /* the outcome of each token */
    for (int v = 0; v < V; v++) of[v] = K;
    for (int k = 0; k < K; k++) {
        of[token[k]] = k;
        T[k] = exp((double)logp[k]);
    }
    if (K < V) T[K] = exp((double)rest);
    for (int v = 0; v < V; v++) part[of[v]] += S[v];
    const double D = divergence_formula(kind, part, T, outcomes, b, tau, slope);
    for (int v = 0; v < V; v++) {
        dz[v] = slope[of[v]] * (S[v] / part[of[v]]);
        t_log[v] = s_log[v] + log(T[of[v]]) - log(part[of[v]]);
    }
    free(part), free(of);
    return D;
}

/* Calls the operation on random models and compares all that it computes, without and with gradients. gradient_slack:
 * permitted error of the gradients in roundings of their terms. */
static inline void divergence_check(const Backend *b, Device *d, const DivergenceShape *s, TokenDivergenceKind kind,
                                    uint64_t seed, double gradient_slack) {
    const int R = s->R, C = s->C, V = s->V, K = s->teacher_C;
    const size_t table = (size_t)s->Vp * (size_t)C, used = (size_t)V * (size_t)C, rows = (size_t)R,
                 room = (rows + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN;
    DivergenceCall c = {.b = b, .d = d, .random = random_start(seed, 7)};
    float *h = divergence_noise(&c, rows * (size_t)C, SIZE_MAX, 1),
          *w = divergence_noise(&c, table, used, s->amplitude);
    float *th = divergence_noise(&c, rows * (size_t)K, SIZE_MAX, 1),
          *tw = divergence_noise(&c, (size_t)s->teacher_Vp * (size_t)K, (size_t)V * (size_t)K, s->amplitude);
    float *weight = divergence_noise(&c, rows, SIZE_MAX, 1), *dlogp = divergence_noise(&c, rows, SIZE_MAX, 0.5),
          *dentropy = divergence_noise(&c, rows, SIZE_MAX, 0.5), *dw = divergence_noise(&c, table, SIZE_MAX, 1);
    int32_t *target = (int32_t *)xcalloc(rows, sizeof *target);
    for (int r = 0; r < R; r++) target[r] = (int32_t)random_below(&c.random, (uint64_t)V);

    /* the formulas: the gradient is that of sum weight D + dlogp logp + dentropy entropy */
    double *z = (double *)xcalloc((size_t)V * 10, sizeof *z), *u = z + V, *slope = u + V, *none = slope + V,
           *s_log = none + V, *S = s_log + V, *t_log = S + V, *T = t_log + V, *dz = T + V, *head = dz + V;
    const int K1 = s->listed > 0 ? s->listed : 1;
    int32_t *list = (int32_t *)xcalloc(rows * (size_t)K1, sizeof *list);
    float *list_logp = (float *)xcalloc(rows * ((size_t)K1 + 1), sizeof *list_logp),
          *rest = list_logp + rows * (size_t)K1;
    enum { VALUE, FORWARD, REVERSE, LOGP, ENTROPY, TEACHER_LOGP, TEACHER_ENTROPY, RESULTS };
    double *want = (double *)xcalloc(rows * RESULTS * 2, sizeof *want), *size = want + rows * RESULTS;
    const size_t small = rows * (size_t)C;
    double *dh = (double *)xcalloc(2 * (small + table), sizeof *dh), *dh_size = dh + small, *dweight = dh_size + small,
           *dweight_size = dweight + table;
    for (size_t i = 0; i < table; i++) {
        dweight[i] = dw[i];
        dweight_size[i] = fabs(dw[i]);
    }
    int32_t *most = (int32_t *)xcalloc(2 * rows, sizeof *most);
    for (int r = 0; r < R; r++) {
        double terms = 1, apart = 0;
        divergence_logits(h + (size_t)r * (size_t)C, w, C, V, s->cap, z, slope, &terms);
        divergence_logits(th + (size_t)r * (size_t)K, tw, K, V, s->teacher_cap, u, none, &terms);
        for (int v = 1; v < V; v++) {
            if (z[v] > z[most[r]]) most[r] = v;
            if (u[v] > u[most[rows + (size_t)r]]) most[rows + (size_t)r] = v;
        }
        double *row = want + r, *row_size = size + r;
        const double own_entropy = divergence_softmax(z, V, s->head_temperature, head, S);
        row[rows * LOGP] = head[target[r]];
        row[rows * ENTROPY] = own_entropy;
        double *part = head; /* the gradient of the head's part */
        for (int v = 0; v < V; v++)
            part[v] = ((double)dlogp[r] * ((v == target[r]) - S[v]) -
                       (S[v] > 0 ? (double)dentropy[r] * S[v] * (head[v] + own_entropy) : 0)) /
                      s->head_temperature;
        divergence_softmax(z, V, s->temperature, s_log, S);
        row[rows * TEACHER_ENTROPY] = divergence_softmax(u, V, s->temperature, t_log, T);
        row[rows * TEACHER_LOGP] = t_log[target[r]];
        double *scratch = none;
        if (s->listed) {
            int32_t *token = list + (size_t)r * (size_t)s->listed;
            float *logp = list_logp + (size_t)r * (size_t)s->listed;
            divergence_list(t_log, V, s->listed, token, logp, rest + r);
            const struct {
                int at;
                TokenDivergenceKind kind;
            } of[] = {{FORWARD, TOKEN_FORWARD_KL}, {REVERSE, TOKEN_REVERSE_KL}, {VALUE, kind}};
            for (int k = 0; k < 3; k++)
                row[rows * (size_t)of[k].at] = divergence_listed(of[k].kind, S, s_log, t_log, V, s->listed, token, logp,
                                                                 rest[r], s->beta, s->temperature, dz);
            for (int v = 0; v < V; v++) T[v] = exp(t_log[v]);
        } else {
            row[rows * FORWARD] = divergence_formula(TOKEN_FORWARD_KL, S, T, V, 0, 1, scratch);
            row[rows * REVERSE] = divergence_formula(TOKEN_REVERSE_KL, S, T, V, 0, 1, scratch);
            row[rows * VALUE] = divergence_formula(kind, S, T, V, s->beta, s->temperature, dz);
        }
        for (int v = 0; v < V; v++) apart += (S[v] + T[v]) * (1 + fabs(s_log[v] - t_log[v]));
        const double coldest = fmin(s->temperature, s->head_temperature);
        const double logit = terms * ((C > K ? C : K) + 6) / coldest;
        for (int k = 0; k < RESULTS; k++) row_size[rows * (size_t)k] = logit * apart + 8 * fabs(row[rows * (size_t)k]);
        for (int v = 0; v < V; v++) {
            double g = ((double)weight[r] * dz[v] + part[v]) * slope[v];
            const double near = fabs(s_log[v] - t_log[v]) < 1e-4 ? 1e6 : 1; /* of TVD: the sign may differ */
            const double g_size =
                (fabs((double)weight[r]) * ((S[v] + T[v]) * (1 + fabs(s_log[v] - t_log[v]) + apart) * near) +
                 fabs((double)dlogp[r]) * ((v == target[r]) + S[v]) + fabs(part[v]) +
                 fabs((double)dentropy[r]) * S[v] * (1 + fabs(s_log[v]))) /
                coldest * (1 + logit / 8);
            for (int k = 0; k < C; k++) {
                const size_t at = (size_t)r * (size_t)C + (size_t)k, in = (size_t)v * (size_t)C + (size_t)k;
                dh[at] += g * w[in];
                dh_size[at] += g_size * fabs((double)w[in]);
                dweight[in] += g * h[at];
                dweight_size[in] += g_size * fabs((double)h[at]);
            }
        }
    }

    TokenDivergence a = {.head = {.rows = R,
                                  .channels = C,
                                  .vocab = V,
                                  .padded_vocab = s->Vp,
                                  .temperature = s->head_temperature,
                                  .cap = s->cap,
                                  .h = (const Acts *)divergence_narrow(&c, h, small, room * (size_t)C),
                                  .weight = (const Weights *)divergence_narrow(&c, w, table, table),
                                  .target = (const Ints *)divergence_words(&c, target, rows)},
                         .kind = kind,
                         .channels = K,
                         .padded_vocab = s->teacher_Vp,
                         .temperature = s->temperature,
                         .beta = s->beta,
                         .cap = s->teacher_cap,
                         .h = (const Acts *)divergence_narrow(&c, th, rows * (size_t)K, room * (size_t)K)};
    a.output = (const Weights *)divergence_narrow(&c, tw, (size_t)s->teacher_Vp * (size_t)K,
                                                  (size_t)s->teacher_Vp * (size_t)K);
    const QuantMatrix own = {.parts = 1, .type = {QUANT_F32}, .rows = {s->Vp}, .blocks = {(const Blocks *)w}};
    const QuantMatrix teacher = {
        .parts = 1, .type = {QUANT_F32}, .rows = {s->teacher_Vp}, .blocks = {(const Blocks *)tw}};
    if (s->blocks) {
        a.head.weight = a.output = NULL;
        a.head.matrix = &own;
        a.matrix = &teacher;
    }
    if (s->listed) {
        a.h = NULL;
        a.output = NULL;
        a.matrix = NULL;
        a.channels = 0;
        a.cap = 0;
        a.padded_vocab = s->Vp;
        a.listed = s->listed;
        a.list = (const Ints *)divergence_words(&c, list, rows * (size_t)s->listed);
        a.list_logp = (const Floats *)divergence_words(&c, list_logp, rows * (size_t)s->listed);
        a.rest_logp = (const Floats *)divergence_words(&c, rest, rows);
    }
    Floats *result[RESULTS];
    for (int k = 0; k < RESULTS; k++) result[k] = (Floats *)divergence_words(&c, NULL, rows);
    Ints *argmax[2] = {(Ints *)divergence_words(&c, NULL, rows), (Ints *)divergence_words(&c, NULL, rows)};
    a.value = result[VALUE];
    a.forward_kl = result[FORWARD];
    a.reverse_kl = result[REVERSE];
    a.head.logp = result[LOGP];
    a.head.entropy = result[ENTROPY];
    a.logp = s->listed ? NULL : result[TEACHER_LOGP];
    a.entropy = s->listed ? NULL : result[TEACHER_ENTROPY];
    a.head.argmax = argmax[0];
    a.argmax = s->listed ? NULL : argmax[1];
    const int results = s->listed ? TEACHER_LOGP : RESULTS; /* a list has none of the teacher's */
    b->divergence(d, &a);
    static const char *const name[] = {"value",   "forward_kl",     "reverse_kl",       "logp",
                                       "entropy", "teacher's logp", "teacher's entropy"};
    float *got = (float *)xcalloc(2 * rows * RESULTS, sizeof *got), *again = got + rows * RESULTS;
    for (int k = 0; k < results; k++) {
        b->download(d, got + rows * (size_t)k, result[k], rows * sizeof *got);
        divergence_near(name[k], got + rows * (size_t)k, want + rows * (size_t)k, size + rows * (size_t)k, 8, rows);
    }
    for (int k = 0; k < (s->listed ? 1 : 2); k++) {
        int32_t *chosen = (int32_t *)xcalloc(rows, sizeof *chosen);
        b->download(d, chosen, argmax[k], rows * sizeof *chosen);
        assert_memory_equal(chosen, most + (size_t)k * rows, rows * sizeof *chosen);
        free(chosen);
    }
    /* with gradients: the same values */
    float *zeros = (float *)xcalloc(room * (size_t)C, sizeof *zeros);
    Acts *out = (Acts *)divergence_narrow(&c, zeros, room * (size_t)C, room * (size_t)C);
    Floats *given = (Floats *)divergence_words(&c, dw, table);
    a.head.dweight = s->blocks ? NULL : given;
    a.head.dh = out;
    a.head.dlogp = (const Floats *)divergence_words(&c, dlogp, rows);
    a.head.dentropy = (const Floats *)divergence_words(&c, dentropy, rows);
    a.weight = (const Floats *)divergence_words(&c, weight, rows);
    b->divergence(d, &a);
    for (int k = 0; k < results; k++) b->download(d, again + rows * (size_t)k, result[k], rows * sizeof *got);
    assert_memory_equal(got, again, rows * (size_t)results * sizeof *got);
    float *grads = (float *)xcalloc(table + small, sizeof *grads);
    b->weights_download(d, grads, (const Weights *)out, small);
    divergence_near("dh", grads, dh, dh_size, gradient_slack + V, small);
    b->download(d, grads, given, table * sizeof *grads);
    if (!s->blocks) divergence_near("dweight", grads, dweight, dweight_size, gradient_slack + R, used);
    for (size_t i = used; i < table; i++) assert_true(grads[i] == dw[i]); /* padding gets no gradient */
    if (b->store_next && !s->blocks) {                                    /* the gradient alone, stored */
        for (size_t i = 0; i < used; i++) dweight[i] -= (double)dw[i];
        b->store_next(d, given);
        b->divergence(d, &a);
        b->download(d, grads, given, table * sizeof *grads);
        divergence_near("dweight, stored", grads, dweight, dweight_size, gradient_slack + R, used);
    }
    /* what may be NULL */
    a.head.dlogp = a.head.dentropy = NULL;
    a.head.entropy = a.forward_kl = a.reverse_kl = a.entropy = NULL;
    a.head.argmax = a.argmax = NULL;
    a.head.dweight = NULL;
    b->divergence(d, &a);
    b->weights_download(d, grads, (const Weights *)out, small);
    for (size_t i = 0; i < small; i++) assert_true(isfinite(grads[i]));

    divergence_free(&c);
    free(h), free(w), free(th), free(tw), free(weight), free(dlogp), free(dentropy), free(dw), free(target);
    free(z), free(want), free(dh), free(most), free(got), free(zeros), free(grads), free(list), free(list_logp);
}

/* All kinds, over shapes with odd sizes, one row, a padded vocabulary, other shapes and caps of the teacher, and lists. */
static inline void divergence_check_all(const Backend *b, Device *d, double gradient_slack) {
    static const DivergenceShape shapes[] = {{37, 24, 257, 384, 40, 320, 1, 1, 0.5f, 0, 0, 0.3, 0, false},
                                             {1, 8, 5, 128, 8, 5, 2, 1, 0.1f, 0, 0, 1, 0, false},
                                             {16, 16, 128, 128, 8, 128, 0.5f, 0.7f, 0.9f, 3, 0, 0.4, 0, false},
                                             {5, 24, 300, 304, 56, 512, 1, 1, 0.3f, 0, 2, 0.2, 0, false},
                                             {3, 8, 5003, 5120, 16, 5008, 0.7f, 0.7f, 0.2f, 0, 0, 0.4, 0, false},
                                             /* lists: some tokens, all of them, one */
                                             {37, 24, 257, 384, 40, 320, 1, 1, 0.5f, 0, 0, 0.3, 16, false},
                                             {16, 16, 128, 128, 8, 128, 0.5f, 0.7f, 0.9f, 3, 0, 0.4, 128, false},
                                             {3, 8, 1203, 1280, 16, 1203, 0.7f, 1, 0.2f, 2, 0, 0.4, 1, false}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int kind = 0; kind < TOKEN_DIVERGENCE_KINDS; kind++)
            divergence_check(b, d, &shapes[i], (TokenDivergenceKind)kind, 17 * i + (uint64_t)kind, gradient_slack);
}

#endif
