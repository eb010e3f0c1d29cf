/* test_preference.c - loss/preference.h and loss/kto.h against values from TRL's code (golden/preference.txt, written
 * by dev/golden/golden_preference.py), finite differences, and numbers from papers and algebra. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/options.h"    /* option_choice_index, option_choice_name */
#include "../llmc/base/random.h"     /* Random, random_real, random_start */
#include "../llmc/loss/kto.h"        /* kto_completion, KtoConfig, KtoLoss, kto_clamp, ... */
#include "../llmc/loss/preference.h" /* PreferenceConfig, preference_add, PreferenceLoss, PREFERENCE_SIGMOID, ... */
#include "../llmc/loss/scalar.h"     /* sigmoid, LossMetric */
#include "golden.h"                  /* check_near, golden, golden_floats, Golden, ... */

static const char *loss_name(PreferenceLoss loss) {
    static char name[32];
    option_choice_name(PREFERENCE_LOSS_CHOICES, (int)loss, name, sizeof name);
    return name;
}

/* ---- golden values --------------------------------------------------------------------------------------------- */

typedef struct PairCase {
    PreferenceConfig config;
    PreferenceBatch batch;
    int32_t offset[64], tokens;
    float *arrays[3];
} PairCase;

static void pair_case_load(PairCase *p, const Golden *g) {
    const double *x = golden(g, "config"), *prompt = golden(g, "prompt"), *chosen = golden(g, "chosen"),
                 *rejected = golden(g, "rejected"), *gold = golden(g, "gold"), *tpo = golden(g, "tpo");
    const int n = golden_count(g, "chosen");
    *p = (PairCase){.config = preference_config()};
    PreferenceConfig *c = &p->config;
    for (int i = 0; i < golden_count(g, "losses"); i++)
        preference_add(c, (PreferenceLoss)golden(g, "losses")[i], golden(g, "weights")[i]);
    c->beta = x[0];
    c->label_smoothing = x[1];
    c->divergence = (Divergence)x[2];
    c->divergence_alpha = x[3];
    c->ld_alpha = x[4];
    c->use_weighting = x[5] != 0;
    c->discopop_tau = x[6];
    c->simpo_gamma = x[7];
    c->cpo_alpha = x[8];
    c->alpha = x[9];
    if (tpo) c->tpo_alpha = tpo[0], c->tpo_l_gamma = tpo[1];
    for (int i = 0; i < n; i++) {
        p->offset[4 * i + 1] = p->offset[4 * i] + (int32_t)prompt[i];
        p->offset[4 * i + 2] = p->offset[4 * i + 1] + (int32_t)chosen[i];
        p->offset[4 * i + 3] = p->offset[4 * i + 2] + (int32_t)rejected[i];
        p->offset[4 * i + 4] = p->offset[4 * i + 3] + (gold ? (int32_t)gold[i] : 0);
    }
    p->tokens = p->offset[4 * n];
    const char *names[] = {"logp", "ref", "square"};
    for (int i = 0; i < 3; i++) p->arrays[i] = golden_floats(g, names[i]);
    p->batch = (PreferenceBatch){
        .pairs = n, .offset = p->offset, .logp = p->arrays[0], .ref_logp = p->arrays[1], .log_square = p->arrays[2]};
}

static void pair_case_free(PairCase *p) {
    for (int i = 0; i < 3; i++) free(p->arrays[i]);
}

static void test_pairs_golden(void **state) {
    (void)state;
    FILE *f = golden_open("preference.txt");
    Golden g;
    int cases = 0, seen[PREFERENCE_LOSSES] = {0};
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "pair")) continue;
        PairCase p;
        pair_case_load(&p, &g);
        float dlogp[512];
        char what[256];
        PreferenceStats stats = {0};
        const PreferenceNormaliser n = preference_normaliser(p.offset, p.batch.pairs);
        /* TRL computed the cases marked `single` in float32: some hundred roundings of 6e-8 */
        const double tolerance = golden(&g, "single") && *golden(&g, "single") ? 2e-5 : 1e-6;
        snprintf(what, sizeof what, "%s %s: loss", g.family, g.name);
        assert_string_equal(g.family, loss_name(p.config.loss[0]));
        check_near(preference_loss(&p.config, &n, &p.batch, dlogp, &stats), *golden(&g, "loss"), 1e-3, tolerance, what);
        const double *expected = golden(&g, "dlogp"), scale = fmax(largest(expected, p.tokens) * 0.1, 1e-8);
        for (int t = 0; t < p.tokens; t++) {
            snprintf(what, sizeof what, "%s %s: dlogp[%d]", g.family, g.name, t);
            check_near(dlogp[t], expected[t], scale, tolerance, what);
        }
        LossMetric metric[PREFERENCE_METRICS];
        const int metrics = preference_metrics(&p.config, &stats, metric);
        for (int i = 0; i < g.fields; i++) {
            if (strncmp(g.field[i].key, "metric:", 7)) continue;
            int k = 0;
            while (k < metrics && strcmp(metric[k].name, g.field[i].key + 7)) k++;
            snprintf(what, sizeof what, "%s %s: %s", g.family, g.name, g.field[i].key);
            if (k == metrics) fail_msg("%s: not given", what);
            check_near(metric[k].value, g.field[i].values[0], 0.01, tolerance, what);
        }
        for (int i = 0; i < p.config.losses; i++) seen[p.config.loss[i]]++;
        pair_case_free(&p);
        cases++;
    }
    fclose(f);
    assert_true(cases > 120);
    for (int i = 0; i < PREFERENCE_LOSSES; i++)
        if (!seen[i] && i != PREFERENCE_DPOP) fail_msg("%s: no golden values", loss_name((PreferenceLoss)i));
}

static void test_kto_golden(void **state) {
    (void)state;
    FILE *f = golden_open("preference.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "kto")) continue;
        const double *x = golden(&g, "config");
        int32_t offset[16], kl_offset[16];
        uint8_t good[16];
        const int n = golden_offsets(&g, "length", offset, 16, 64);
        assert_int_equal(golden_offsets(&g, "kl_length", kl_offset, 16, 64), n);
        for (int i = 0; i < n; i++) good[i] = (uint8_t)golden(&g, "good")[i];
        float *logp = golden_floats(&g, "logp"), *ref = golden_floats(&g, "ref"), dlogp[64];
        float *kl_logp = golden_floats(&g, "kl_logp"), *kl_ref = golden_floats(&g, "kl_ref");
        KtoConfig c = kto_config();
        c.loss = (KtoLoss)option_choice_index(KTO_LOSS_CHOICES, g.family);
        c.beta = x[0];
        c.desirable_weight = x[1];
        c.undesirable_weight = x[2];
        const KtoBatch b = {.completions = n, .offset = offset, .good = good, .logp = logp, .ref_logp = ref};
        KtoStats stats = {0};
        double sum = 0;
        for (int i = 0; i < n; i++) sum += kto_ratio(kl_offset, kl_logp, kl_ref, i);
        const double z = kto_clamp(sum / n);
        check_near(kto_loss(&c, z, n, &b, dlogp, &stats), *golden(&g, "loss"), 1e-3, 1e-6, g.name);
        for (int t = 0; t < offset[n]; t++) check_near(dlogp[t], golden(&g, "dlogp")[t], 1e-4, 1e-6, g.name);
        LossMetric metric[KTO_METRICS];
        const int metrics = kto_metrics(&c, &stats, z, metric);
        int expected = 0;
        for (int i = 0; i < g.fields; i++) {
            if (strncmp(g.field[i].key, "metric:", 7)) continue;
            int k = 0;
            while (k < metrics && strcmp(metric[k].name, g.field[i].key + 7)) k++;
            if (k == metrics) fail_msg("%s: %s: not given", g.name, g.field[i].key);
            check_near(metric[k].value, g.field[i].values[0], 0.01, 1e-6, g.field[i].key);
            expected++;
        }
        assert_int_equal(metrics, expected); /* and none for a class without answers */
        free(logp), free(ref), free(kl_logp), free(kl_ref);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 12);
}

/* ---- finite differences ---------------------------------------------------------------------------------------- */

/* A random batch whose log-probabilities are multiples of 2^-12, so that adding a multiple of 2^-12 is exact in float.
 * The loss is computed in double, so its differences are accurate to many digits. */
enum { FD_PAIRS = 5, FD_TOKENS = 56 };
typedef struct FdBatch {
    int32_t offset[4 * FD_PAIRS + 1];
    float logp[FD_TOKENS], ref[FD_TOKENS], square[FD_TOKENS], linear[2 * FD_PAIRS];
    PreferenceBatch batch;
} FdBatch;

static float grid(Random *r, double low, double high) {
    return (float)(round((low + (high - low) * random_real(r)) * 4096) / 4096);
}

static void fd_batch(FdBatch *b, uint64_t seed, double drift) {
    const int32_t offset[4 * FD_PAIRS + 1] = {0,  2,  6,  9,  10, 10, 11, 16, 19, 22, 24,
                                              26, 28, 29, 32, 38, 42, 42, 47, 51, 53};
    Random r = random_start(seed, 0);
    memcpy(b->offset, offset, sizeof offset);
    for (int t = 0; t < FD_TOKENS; t++) {
        b->logp[t] = grid(&r, -3, -0.2);
        b->ref[t] = b->logp[t] + grid(&r, -drift, drift);
        b->square[t] = grid(&r, -2, 0);
    }
    for (int i = 0; i < 2 * FD_PAIRS; i++) b->linear[i] = grid(&r, -1, 1);
    b->batch = (PreferenceBatch){
        .pairs = FD_PAIRS, .offset = b->offset, .logp = b->logp, .ref_logp = b->ref, .log_square = b->square};
}

static double fd_loss(const PreferenceConfig *c, const FdBatch *b, float *dlogp) {
    const PreferenceNormaliser n = preference_normaliser(b->offset, FD_PAIRS);
    PreferenceStats stats = {0};
    return preference_loss(c, &n, &b->batch, dlogp, &stats);
}

/* Central difference of order h^4 (Richardson) in logp[t].
 *
 * With h = 2^-12 the truncation error is about h^4 = 4e-15 times a fifth derivative, and the rounding error about
 * 1e-16 / h = 4e-13 times the loss. Both are small against the gradient's rounding to float (3e-8 of its size); 3e-6 of
 * the largest gradient leaves room for the losses whose fifth derivative is large. */
static double fd_slope(const PreferenceConfig *c, FdBatch *b, int t, float h0) {
    double d[2];
    const float x0 = b->logp[t];
    for (int k = 0; k < 2; k++) {
        const float h = k ? 2 * h0 : h0;
        b->logp[t] = x0 + h;
        const double up = fd_loss(c, b, NULL);
        b->logp[t] = x0 - h;
        d[k] = (up - fd_loss(c, b, NULL)) / (2 * (double)h);
        b->logp[t] = x0;
    }
    return (4 * d[0] - d[1]) / 3;
}

static void fd_check(const PreferenceConfig *c, uint64_t seed, bool linear, bool reference_free) {
    FdBatch b;
    float dlogp[FD_TOKENS];
    fd_batch(&b, seed, 0.6);
    if (linear) b.batch.linear = b.linear;
    if (reference_free) b.batch.ref_logp = NULL;
    for (int t = 0; t < FD_TOKENS; t++) dlogp[t] = 99;
    fd_loss(c, &b, dlogp);
    double most = 1e-6;
    for (int t = 0; t < b.offset[4 * FD_PAIRS]; t++) most = fmax(most, fabs(dlogp[t]));
    for (int t = 0; t < b.offset[4 * FD_PAIRS]; t++) {
        char what[100];
        snprintf(what, sizeof what, "%s, seed %d: dlogp[%d]", loss_name(c->loss[0]), (int)seed, t);
        check_near(dlogp[t], fd_slope(c, &b, t, 1 / 4096.0f), most, 3e-6, what);
    }
    assert_true(dlogp[FD_TOKENS - 1] == 99); /* nothing is written beyond the batch */
}

static void test_finite_differences(void **state) {
    (void)state;
    for (int loss = 0; loss < PREFERENCE_LOSSES; loss++)
        for (uint64_t seed = 1; seed <= 3; seed++) {
            PreferenceConfig c = preference_config();
            preference_add(&c, (PreferenceLoss)loss, 0.7);
            c.beta = 0.3;
            c.label_smoothing = 0.12;
            c.discopop_tau = 0.4;
            c.dpop_lambda = 3;
            c.simpo_gamma = 0.8;
            c.tpo_alpha = 0.6;
            c.tpo_l_gamma = 0.9;
            fd_check(&c, seed, false, false);
            fd_check(&c, seed, true, true);
            c.ld_alpha = 0.4;
            c.alpha = 0.2;
            fd_check(&c, seed, true, false);
            if (preference_takes_divergence((PreferenceLoss)loss))
                for (int f = 1; f < 4; f++) {
                    c.divergence = (Divergence)f;
                    fd_check(&c, seed, false, false);
                }
        }
    PreferenceConfig c = preference_config();
    preference_add(&c, PREFERENCE_IPO, 0.3);
    preference_add(&c, PREFERENCE_ORPO, 1.2);
    preference_add(&c, PREFERENCE_AOT_UNPAIRED, 0.5);
    preference_add(&c, PREFERENCE_CPO, 0.1);
    preference_add(&c, PREFERENCE_TPO_L, 0.4);
    fd_check(&c, 8, true, false);
}

/* WPO's weights are constants: the gradient is the pair's gradient times its weight. */
static void test_weighting_is_held(void **state) {
    (void)state;
    FdBatch b;
    float with[FD_TOKENS], without[FD_TOKENS];
    fd_batch(&b, 4, 0.6);
    PreferenceConfig c = preference_config();
    preference_add(&c, PREFERENCE_SIGMOID, 1);
    fd_loss(&c, &b, without);
    c.use_weighting = true;
    fd_loss(&c, &b, with);
    for (int i = 0; i < FD_PAIRS; i++) {
        double log_weight = 0;
        for (int k = 1; k < 3; k++) {
            const int32_t begin = b.offset[4 * i + k], end = b.offset[4 * i + k + 1];
            for (int32_t t = begin; t < end; t++) log_weight += (b.logp[t] - b.square[t]) / (double)(end - begin);
        }
        for (int32_t t = b.offset[4 * i + 1]; t < b.offset[4 * i + 3]; t++)
            check_near(with[t], without[t] * exp(log_weight), 1e-6, 1e-5, "weighted");
    }
}

static void test_kto_finite_differences(void **state) {
    (void)state;
    for (int loss = 0; loss < 2; loss++)
        for (int good = 0; good < 2; good++)
            for (double x = -6; x < 6.5; x += 1.5) {
                KtoConfig c = kto_config();
                c.loss = (KtoLoss)loss;
                c.beta = 0.7;
                c.desirable_weight = 1.3;
                c.undesirable_weight = 0.6;
                const double h = 1e-5,
                             slope = (kto_completion(&c, 0.4, good, x + h).y - kto_completion(&c, 0.4, good, x - h).y);
                check_near(kto_completion(&c, 0.4, good, x).dy, slope / (2 * h), 1e-3, 1e-6, "kto");
            }
}

/* Nash-MD: REINFORCE with the reward P - 1/2 - beta log-ratio, in which each token's log-ratio is a constant. */
static void test_nash_md(void **state) {
    (void)state;
    const int32_t offset[] = {0, 0, 3, 3, 3, 3, 5, 5, 5};
    const float logp[] = {-1, -2, -0.5f, -1.5f, -0.25f}, ref[] = {-1.5f, -1.5f, -0.5f, -2, -1},
                probability[] = {0.9f, 0.2f};
    float dlogp[5];
    const PreferenceBatch b = {.pairs = 2, .offset = offset, .logp = logp, .ref_logp = ref};
    const double loss = nash_md_loss(0.3, 2, &b, probability, dlogp);
    double expected = 0;
    for (int t = 0; t < 5; t++) {
        const double slope = (0.3 * (logp[t] - ref[t]) - ((t < 3 ? 0.9 : 0.2) - 0.5)) / 2;
        expected += slope * logp[t];
        check_near(dlogp[t], slope, 1e-3, 1e-6, "nash_md");
    }
    check_near(loss, expected, 1e-3, 1e-6, "nash_md");
}

/* ---- identities ------------------------------------------------------------------------------------------------ */

static PreferenceTerm term(PreferenceConfig *c, PreferenceLoss loss, double chosen, double rejected) {
    const PreferenceCompletion a[2] = {{.logp = chosen, .plain = chosen, .length = 1},
                                       {.logp = rejected, .plain = rejected, .length = 1}};
    return preference_pair(c, loss, a);
}

static void test_known_values(void **state) {
    (void)state;
    PreferenceConfig c = preference_config();
    /* DPO: dL/dD at beta 0.1, D 1.7; log 2 at the start; gradients of the two answers are opposite */
    PreferenceTerm t = term(&c, PREFERENCE_SIGMOID, 1.7, 0);
    check_near(t.dlogp[0], -0.04576021, 0, 1e-6, "dpo");
    check_near(t.dlogp[1], 0.04576021, 0, 1e-6, "dpo");
    check_near(term(&c, PREFERENCE_SIGMOID, 0, 0).l, log(2), 0, 1e-12, "dpo at the start");
    /* hinge: 1 at the start, flat beyond the margin; IPO: its minimum is at D = 1/(2 beta), while DPO has none */
    assert_true(term(&c, PREFERENCE_HINGE, 0, 0).l == 1);
    assert_true(term(&c, PREFERENCE_HINGE, 11, 0).dlogp[0] == 0);
    assert_true(term(&c, PREFERENCE_IPO_SUM, 5, 0).l == 0 && term(&c, PREFERENCE_IPO_SUM, 6, 0).dlogp[0] > 0);
    assert_true(term(&c, PREFERENCE_SIGMOID, 1e3, 0).dlogp[0] < 0);
    /* conservative DPO has its minimum at sigma(beta D) = 1 - e; robust DPO's loss is unbiased under flipped labels */
    c.label_smoothing = 0.1;
    check_near(term(&c, PREFERENCE_SIGMOID, log(9) / 0.1, 0).dlogp[0], 0, 1, 1e-12, "cdpo");
    const double flipped = 0.9 * term(&c, PREFERENCE_ROBUST, 3, 1).l + 0.1 * term(&c, PREFERENCE_ROBUST, 1, 3).l;
    c.label_smoothing = 0;
    check_near(flipped, term(&c, PREFERENCE_SIGMOID, 3, 1).l, 0, 1e-12, "robust");
    /* exo: the KL between (1-e, e) and the policy's distribution, 0 if they agree */
    c.label_smoothing = 0.2;
    check_near(term(&c, PREFERENCE_EXO_PAIR, log(4) / 0.1, 0).l, 0, 1, 1e-12, "exo");
    c.label_smoothing = 0;
    /* dpop equals DPO unless the chosen answer becomes less likely */
    check_near(term(&c, PREFERENCE_DPOP, 2, -1).l, term(&c, PREFERENCE_SIGMOID, 2, -1).l, 0, 1e-12, "dpop");
    assert_true(term(&c, PREFERENCE_DPOP, -0.1, -1).l > term(&c, PREFERENCE_SIGMOID, -0.1, -1).l + 0.1);
    /* sppo: zero at +-1/(2 beta) */
    assert_true(term(&c, PREFERENCE_SPPO_HARD, 5, -5).l == 0);
    /* odds of one answer: p = 1/4 has 1/3 */
    check_near(preference_log_odds(log(0.25)).y, log(1.0 / 3), 0, 1e-12, "odds");
    assert_true(isfinite(preference_log_odds(0).y) && isfinite(preference_log_odds(-800).y));
    assert_true(isfinite(term(&c, PREFERENCE_ORPO, 0, -3).dplain[0]));
    /* extreme values do not overflow */
    for (int loss = 0; loss < PREFERENCE_LOSSES; loss++)
        for (int s = 0; s < 4; s++) {
            if (loss == PREFERENCE_AOT || loss == PREFERENCE_AOT_UNPAIRED || loss == PREFERENCE_SFT) continue;
            c.label_smoothing = 0.1;
            t = term(&c, (PreferenceLoss)loss, s & 1 ? -5e3 : -1e-3, s & 2 ? -5e3 : -1e-3);
            assert_true(isfinite(t.l) && isfinite(t.dlogp[0]) && isfinite(t.dlogp[1]));
            assert_true(isfinite(t.dplain[0]) && isfinite(t.dplain[1]));
        }
}

/* One pair's aot is sigmoid. With equal sorting orders aot is the mean of sigmoids. Its value does not depend on the
 * order of the pairs. */
static void test_aot(void **state) {
    (void)state;
    FdBatch b;
    float dlogp[FD_TOKENS], sigmoid[FD_TOKENS];
    fd_batch(&b, 5, 0.6);
    PreferenceConfig aot = preference_config(), dpo = preference_config();
    preference_add(&aot, PREFERENCE_AOT, 1);
    preference_add(&dpo, PREFERENCE_SIGMOID, 1);
    PreferenceStats stats = {0};
    b.batch.pairs = 1;
    const PreferenceNormaliser one = preference_normaliser(b.offset, 1);
    check_near(preference_loss(&aot, &one, &b.batch, dlogp, &stats),
               preference_loss(&dpo, &one, &b.batch, sigmoid, &stats), 0, 1e-12, "aot of one");
    for (int t = 0; t < b.offset[4]; t++) check_near(dlogp[t], sigmoid[t], 1e-6, 1e-6, "aot of one");
    b.batch.pairs = FD_PAIRS;
    for (int i = 0; i < b.offset[4 * FD_PAIRS]; i++) b.ref[i] = b.logp[i] - 0.25f * (float)(i % 2);
    /* a reference that scales the policy keeps the order */
    for (int i = 0; i < b.offset[4 * FD_PAIRS]; i++) b.ref[i] = 0.5f * b.logp[i];
    check_near(fd_loss(&aot, &b, dlogp), fd_loss(&dpo, &b, sigmoid), 0, 1e-12, "aot in order");
    for (int t = 0; t < b.offset[4 * FD_PAIRS]; t++) check_near(dlogp[t], sigmoid[t], 1e-6, 1e-6, "aot in order");
}

/* Losses and gradients of micro-batches add up to those of the batch. */
static void test_micro_batches_add_up(void **state) {
    (void)state;
    for (int loss = 0; loss < PREFERENCE_LOSSES; loss++) {
        FdBatch b;
        float whole[FD_TOKENS], part[FD_TOKENS];
        fd_batch(&b, 6, 0.6);
        b.batch.linear = b.linear;
        PreferenceConfig c = preference_config();
        preference_add(&c, (PreferenceLoss)loss, 0.9);
        c.label_smoothing = 0.1;
        c.ld_alpha = 0.5;
        if (preference_sorts(&c)) continue;
        c.use_weighting = true;
        const PreferenceNormaliser n = preference_normaliser(b.offset, FD_PAIRS);
        PreferenceStats all = {0}, parts = {0};
        const double total = preference_loss(&c, &n, &b.batch, whole, &all);
        double sum = 0;
        for (int i = 0; i < FD_PAIRS;) {
            const int size = i == 0 ? 2 : i == 2 ? 1 : 2;
            PreferenceBatch m = b.batch;
            m.pairs = size;
            m.offset = b.offset + 4 * i;
            m.linear = b.linear + 2 * i;
            sum += preference_loss(&c, &n, &m, part, &parts);
            i += size;
        }
        check_near(sum, total, 0, 1e-12, loss_name((PreferenceLoss)loss));
        for (int t = 0; t < b.offset[4 * FD_PAIRS]; t++) assert_true(part[t] == whole[t]);
        LossMetric x[PREFERENCE_METRICS], y[PREFERENCE_METRICS];
        const int count = preference_metrics(&c, &all, x);
        assert_int_equal(count, preference_metrics(&c, &parts, y));
        for (int k = 0; k < count; k++) check_near(x[k].value, y[k].value, 1e-6, 1e-12, x[k].name);
    }
}

static void test_nan_comes_out(void **state) {
    (void)state;
    for (int loss = 0; loss < PREFERENCE_LOSSES; loss++) {
        FdBatch b;
        float dlogp[FD_TOKENS];
        fd_batch(&b, 7, 0.6);
        PreferenceConfig c = preference_config();
        preference_add(&c, (PreferenceLoss)loss, 1);
        c.label_smoothing = 0.1;
        b.logp[4] = NAN; /* of the first chosen answer */
        assert_true(isnan(fd_loss(&c, &b, dlogp)));
    }
    const float nan[] = {NAN};
    assert_true(isnan(kto_clamp(kto_ratio((const int32_t[]){0, 1}, nan, nan, 0))));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairs_golden),
        cmocka_unit_test(test_kto_golden),
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_weighting_is_held),
        cmocka_unit_test(test_kto_finite_differences),
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_aot),
        cmocka_unit_test(test_micro_batches_add_up),
        cmocka_unit_test(test_nan_comes_out),
        cmocka_unit_test(test_nash_md),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
