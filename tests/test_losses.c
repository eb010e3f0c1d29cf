/* test_losses.c - loss/lm.h, loss/policy.h, advantage.h and kl.h against values from TRL's code (golden/losses.txt,
 * written by dev/golden/golden_losses.py), finite differences, and numbers from papers and algebra. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/options.h"   /* option_choice_index */
#include "../llmc/base/random.h"    /* Random, random_real, random_start */
#include "../llmc/loss/advantage.h" /* advantage_group, advantage_group_differs, AdvantageStats, SCALE_GROUP, ... */
#include "../llmc/loss/kl.h"        /* KL_K1, KlEstimator, kl_estimate, KL_K3, ... */
#include "../llmc/loss/lm.h"        /* loss_nll, LM_LOSS_CHOICES, LmLoss, loss_lm */
#include "../llmc/loss/policy.h"    /* PolicyLossConfig, policy_loss_config, policy_loss, PolicyBatch, ... */
#include "../llmc/loss/scalar.h"    /* LossMetric */
#include "golden.h"                 /* check_near, golden, golden_count, Golden, ... */

/* -- golden values ------------------------------------------------------------------------------------------------ */

typedef struct PolicyCase {
    PolicyLossConfig config;
    PolicyBatch batch;
    PolicyNormaliser normaliser;
    int32_t offset[64], tokens;
    uint8_t mask[64], keep[512];
    float *arrays[6];
} PolicyCase;

static void policy_case_load(PolicyCase *p, const Golden *g) {
    const double *config = golden(g, "config"), *mask = golden(g, "mask");
    *p = (PolicyCase){0};
    const int loss = option_choice_index(POLICY_LOSS_CHOICES, g->family),
              n = golden_offsets(g, "length", p->offset, 64, 512);
    assert_true(loss >= 0);
    p->config = policy_loss_config((PolicyLossKind)loss);
    p->config.importance = golden(g, "importance")[0] ? IMPORTANCE_SEQUENCE : IMPORTANCE_TOKEN;
    p->config.epsilon = config[0];
    p->config.epsilon_high = config[1];
    p->config.delta = config[2];
    p->config.beta = config[3];
    p->config.kl_bias_correction = config[4] != 0;
    p->config.entropy_coef = config[5];
    p->config.off_policy_mask = config[6];
    p->config.max_completion_length = config[7];
    for (int i = 0; i < n; i++) p->mask[i] = (uint8_t)mask[i];
    const char *names[6] = {"advantage", "logp", "old", "ref", "sampler", "entropy"};
    for (int i = 0; i < 6; i++) p->arrays[i] = golden_floats(g, names[i]);
    p->tokens = p->offset[n];
    p->batch = (PolicyBatch){.completions = n,
                             .offset = p->offset,
                             .advantage = p->arrays[0],
                             .counts = p->mask,
                             .logp = p->arrays[1],
                             .old_logp = p->arrays[2],
                             .ref_logp = p->arrays[3],
                             .sampler_logp = p->arrays[4],
                             .entropy = p->arrays[5]};
    if (config[8] < 1) {
        policy_entropy_keep(p->batch.entropy, p->offset, n, p->mask, config[8], p->keep);
        p->batch.keep = p->keep;
    }
    p->normaliser = policy_normaliser(p->offset, n, p->mask, p->batch.keep);
}

static void policy_case_free(PolicyCase *p) {
    for (int i = 0; i < 6; i++) free(p->arrays[i]);
}

static void test_policy_golden(void **state) {
    (void)state;
    FILE *f = golden_open("losses.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "policy")) continue;
        PolicyCase p;
        policy_case_load(&p, &g);
        float dlogp[512], dentropy[512];
        char what[256];
        PolicyStats stats = policy_stats();
        const double loss = policy_loss(&p.config, &p.normaliser, &p.batch, dlogp, dentropy, &stats);
        snprintf(what, sizeof what, "%s %s: loss", g.family, g.name);
        check_near(loss, *golden(&g, "loss"), 1e-3, 1e-6, what);
        const double *expected = golden(&g, "dlogp"), *entropy = golden(&g, "dentropy");
        for (int t = 0; t < p.tokens; t++) {
            snprintf(what, sizeof what, "%s %s: dlogp[%d]", g.family, g.name, t);
            check_near(dlogp[t], expected[t], largest(expected, p.tokens) * 0.1, 1e-6, what);
            check_near(dentropy[t], entropy ? entropy[t] : 0, 0, 1e-6, what);
        }
        LossMetric metric[POLICY_METRICS];
        const int metrics = policy_metrics(&p.config, &stats, metric);
        for (int i = 0; i < g.fields; i++) {
            if (strncmp(g.field[i].key, "metric:", 7) || !strcmp(g.field[i].key, "metric:entropy_coef")) continue;
            int k = 0;
            while (k < metrics && strcmp(metric[k].name, g.field[i].key + 7)) k++;
            snprintf(what, sizeof what, "%s %s: %s", g.family, g.name, g.field[i].key);
            if (k == metrics) fail_msg("%s: not given", what);
            check_near(metric[k].value, g.field[i].values[0], 0.01, 1e-6, what);
        }
        policy_case_free(&p);
        cases++;
    }
    fclose(f);
    assert_true(cases > 150);
}

static void test_advantage_golden(void **state) {
    (void)state;
    FILE *f = golden_open("losses.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "advantage")) continue;
        const double *weight = golden(&g, "weight"), *expected = golden(&g, "advantage"), *kl = golden(&g, "kl");
        const int K = golden_count(&g, "weight"), n = golden_count(&g, "advantage"), G = (int)*golden(&g, "group");
        float *reward = golden_floats(&g, "reward"), advantage[64];
        char what[256];
        AdvantageStats stats, raw;
        advantage_group(reward, n / G, G, SCALE_NONE, advantage, &raw);
        if (kl) { /* each answer has three tokens with log pi = 0, log ref = -kl / 3 */
            float logp[64] = {0}, ref[64];
            int32_t offset[64];
            for (int i = 0; i <= n; i++) offset[i] = 3 * i;
            for (int t = 0; t < 3 * n; t++) ref[t] = (float)(-kl[t / 3] / 3);
            kl_from_rewards(KL_K1, logp, ref, offset, n, *golden(&g, "beta"), reward, NULL);
        }
        if (!strcmp(g.family, "sum_then_normalize"))
            advantage_group(reward, n / G, G, (ScaleRewards)*golden(&g, "scale"), advantage, &stats);
        else if (!strcmp(g.family, "normalize_then_sum")) {
            advantage_gdpo(reward, weight, NULL, n / G, G, K, advantage, &stats);
            raw = stats;
        } else advantage_rloo(reward, n / G, G, *golden(&g, "normalise") != 0, advantage, &stats);
        for (int i = 0; i < n; i++) {
            snprintf(what, sizeof what, "%s %s: advantage[%d]", g.family, g.name, i);
            check_near(advantage[i], expected[i], fmax(largest(expected, n), 1e-3), 1e-6, what);
        }
        snprintf(what, sizeof what, "%s %s: stats", g.family, g.name);
        check_near(raw.reward, *golden(&g, "metric:reward"), 0, 1e-6, what);
        check_near(raw.reward_std, *golden(&g, "metric:reward_std"), 1e-6, 1e-6, what);
        check_near(stats.frac_reward_zero_std, *golden(&g, "metric:frac_reward_zero_std"), 0, 1e-6, what);
        free(reward);
        cases++;
    }
    fclose(f);
    assert_true(cases > 30);
}

static void test_lm_and_entropy_control_golden(void **state) {
    (void)state;
    FILE *f = golden_open("losses.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (!strcmp(g.kind, "lm")) {
            float *logp = golden_floats(&g, "logp"), *weight = golden_floats(&g, "weight"), dlogp[64];
            const int n = golden_count(&g, "logp"), kind = option_choice_index(LM_LOSS_CHOICES, g.family);
            check_near(loss_lm((LmLoss)kind, logp, weight, n, *golden(&g, "normaliser"), dlogp), *golden(&g, "loss"), 0,
                       1e-6, g.family);
            for (int t = 0; t < n; t++) check_near(dlogp[t], golden(&g, "dlogp")[t], 1e-6, 1e-6, g.family);
            free(logp), free(weight);
            cases++;
        } else if (!strcmp(g.kind, "entropy_control")) {
            EntropyControl control = entropy_control(*golden(&g, "coef"));
            for (int i = 0; i < golden_count(&g, "means"); i++) {
                check_near(entropy_control_coef(&control), golden(&g, "applied")[i], 1e-3, 1e-6, "applied");
                entropy_control_update(&control, golden(&g, "means")[i]);
                check_near(control.coef, golden(&g, "after")[i], 1e-3, 1e-6, "coef");
            }
            cases++;
        }
    }
    fclose(f);
    assert_int_equal(cases, 3);
}

/* -- finite differences ------------------------------------------------------------------------------------------- */

/* A random batch whose log-probabilities are multiples of 2^-12 between -8 and 0, so that adding a multiple of 2^-12 is
 * exact in float. The loss is computed in double, so its differences are accurate to many digits. */
enum { FD_SEQUENCES = 5, FD_TOKENS = 19 };
typedef struct FdBatch {
    int32_t offset[FD_SEQUENCES + 1];
    float advantage[FD_SEQUENCES], logp[FD_TOKENS], old[FD_TOKENS], ref[FD_TOKENS], entropy[FD_TOKENS];
    uint8_t mask[FD_SEQUENCES], keep[FD_TOKENS], chosen[FD_TOKENS];
    PolicyBatch batch;
} FdBatch;

static float grid(Random *r, double low, double high) {
    return (float)(round((low + (high - low) * random_real(r)) * 4096) / 4096);
}

static void fd_batch(FdBatch *b, uint64_t seed, double drift) {
    const int32_t offset[FD_SEQUENCES + 1] = {0, 6, 7, 11, 16, 19};
    Random r = random_start(seed, 0);
    memcpy(b->offset, offset, sizeof offset);
    for (int t = 0; t < FD_TOKENS; t++) {
        b->logp[t] = grid(&r, -3, -0.5);
        b->old[t] = b->logp[t] + grid(&r, -drift, drift);
        b->ref[t] = b->logp[t] + grid(&r, -0.5, 0.5);
        b->entropy[t] = grid(&r, 0, 2);
        b->keep[t] = 1;
        b->chosen[t] = t % 4 == 2;
    }
    for (int i = 0; i < FD_SEQUENCES; i++) {
        b->advantage[i] = grid(&r, -1.5, 1.5);
        b->mask[i] = i != 3;
    }
    b->batch = (PolicyBatch){.completions = FD_SEQUENCES,
                             .offset = b->offset,
                             .advantage = b->advantage,
                             .counts = b->mask,
                             .logp = b->logp,
                             .old_logp = b->old,
                             .ref_logp = b->ref,
                             .entropy = b->entropy,
                             .keep = b->keep,
                             .chosen = b->chosen};
}

static double fd_loss(const PolicyLossConfig *c, const FdBatch *b, float *dlogp, float *dentropy) {
    const PolicyNormaliser n = policy_normaliser(b->offset, FD_SEQUENCES, b->mask, b->keep);
    PolicyStats stats = policy_stats();
    return policy_loss(c, &n, &b->batch, dlogp, dentropy, &stats);
}

/* Central difference of order h^4 (Richardson) in x[t]. If `also` is given it moves with x, which keeps rho fixed.
 *
 * With h = 2^-11 the truncation error is about h^4 = 6e-14 times a fifth derivative, and the rounding error about
 * 1e-16 / h = 2e-13. Both are far below the gradient's own rounding to float, so the tolerance is that of golden.h. */
static double fd_slope(const PolicyLossConfig *c, const FdBatch *b, float *x, float *also, int t) {
    double d[2];
    const float x0 = x[t], also0 = also ? also[t] : 0;
    for (int k = 0; k < 2; k++) {
        const float h = k ? 1 / 1024.0f : 1 / 2048.0f;
        double side[2];
        for (int s = 0; s < 2; s++) {
            x[t] = x0 + (s ? h : -h);
            if (also) also[t] = also0 + (s ? h : -h);
            side[s] = fd_loss(c, b, NULL, NULL);
        }
        d[k] = (side[1] - side[0]) / (2 * (double)h);
        x[t] = x0;
        if (also) also[t] = also0;
    }
    return (4 * d[0] - d[1]) / 3;
}

/* Tests if a token is so near a kink of the clipping that the difference would straddle it. */
static bool near_kink(const PolicyLossConfig *c, const FdBatch *b, int i) {
    const double bound[] = {log(1 - c->epsilon), log(1 + c->epsilon_high), c->delta > 0 ? log(c->delta) : 9,
                            c->loss == POLICY_GMPO ? -c->epsilon : 9, c->loss == POLICY_GMPO ? c->epsilon_high : 9};
    double sum = 0;
    for (int32_t t = b->offset[i]; t < b->offset[i + 1]; t++) {
        const double d = (double)b->logp[t] - b->old[t], T = b->offset[i + 1] - b->offset[i];
        sum += d;
        if (c->loss == POLICY_KL_COV && fabs(d) < 0.003) return true;
        if (c->loss == POLICY_DPPO) {
            const double far = policy_probability_change(&b->batch, t);
            if (fabs(far - c->epsilon_high) < 0.003 || fabs(far + c->epsilon) < 0.003) return true;
        }
        for (size_t k = 0; k < sizeof bound / sizeof *bound; k++)
            if (fabs(d - bound[k]) < 0.003 ||
                (t + 1 == b->offset[i + 1] && (fabs(sum / T - bound[k]) < 0.003 || fabs(sum - bound[k]) < 0.003)))
                return true;
    }
    return false;
}

static void test_policy_finite_differences(void **state) {
    (void)state;
    int compared = 0;
    for (int loss = POLICY_GRPO; loss <= POLICY_KL_COV; loss++)
        for (int variant = 0; variant < 24; variant++) {
            PolicyLossConfig c = policy_loss_config((PolicyLossKind)loss);
            /* rho is held fixed: old moves with logp */
            const bool stopped = loss == POLICY_CISPO || loss == POLICY_VESPO;
            if (loss != POLICY_GSPO) c.importance = variant & 1 ? IMPORTANCE_SEQUENCE : IMPORTANCE_TOKEN;
            c.beta = variant & 2 && !stopped ? 0.2 : 0;
            c.kl = (KlEstimator)(variant % 3);
            c.kl_bias_correction = variant & 4;
            c.delta = variant & 8 ? 1.6 : 0;
            c.entropy_coef = variant & 16 ? 0.05 : 0;
            c.epsilon = 0.2;
            c.epsilon_high = loss == POLICY_CISPO ? 1.2 : 0.28;
            if (loss == POLICY_DPPO) {
                c.epsilon = 0.05;
                c.shape.kl_tau = 0.3;
            }
            FdBatch b;
            float dlogp[FD_TOKENS], dentropy[FD_TOKENS];
            fd_batch(&b, (uint64_t)(100 * loss + variant), variant % 5 ? 0.4 : 0.1);
            if (variant >= 16)
                for (int t = 0; t < FD_TOKENS; t++) b.keep[t] = t % 3 != 1;
            fd_loss(&c, &b, dlogp, dentropy);
            for (int i = 0; i < FD_SEQUENCES; i++) {
                if (near_kink(&c, &b, i)) continue;
                for (int t = b.offset[i]; t < b.offset[i + 1]; t++) {
                    char what[128];
                    snprintf(what, sizeof what, "loss %d variant %d token %d", loss, variant, t);
                    check_near(dlogp[t], fd_slope(&c, &b, b.logp, stopped ? b.old : NULL, t), 0.02, 1e-6, what);
                    check_near(dentropy[t], fd_slope(&c, &b, b.entropy, NULL, t), 1e-3, 1e-6, what);
                    compared++;
                }
            }
        }
    assert_true(compared > 2000);
}

static void test_kl_finite_differences(void **state) {
    (void)state;
    for (int kind = KL_K1; kind <= KL_K3; kind++)
        for (double r = -4; r <= 4; r += 0.37) {
            double d;
            kl_estimate((KlEstimator)kind, r, &d);
            const double h = 1e-4, slope = (kl_estimate((KlEstimator)kind, r + h, NULL) -
                                            kl_estimate((KlEstimator)kind, r - h, NULL)) /
                                           (2 * h);
            check_near(d, slope, 1, 1e-6, "kl derivative");
        }
    assert_true(kl_estimate(KL_K3, 1e-9, NULL) >= 0);
}

/* -- identities and published numbers ----------------------------------------------------------------------------- */

/* Any division of the batch between answers gives the same loss, gradient and metrics. */
static void test_micro_batches(void **state) {
    (void)state;
    for (int loss = POLICY_GRPO; loss <= POLICY_KL_COV; loss++) {
        PolicyLossConfig c = policy_loss_config((PolicyLossKind)loss);
        c.beta = 0.1;
        c.entropy_coef = 0.01;
        c.delta = 1.7;
        c.off_policy_mask = 0.2;
        FdBatch b;
        fd_batch(&b, (uint64_t)loss, 0.5);
        policy_entropy_keep(b.entropy, b.offset, FD_SEQUENCES, b.mask, 0.6, b.keep);
        const PolicyNormaliser n = policy_normaliser(b.offset, FD_SEQUENCES, b.mask, b.keep);
        float whole[FD_TOKENS], part[FD_TOKENS], whole_h[FD_TOKENS], part_h[FD_TOKENS];
        PolicyStats one = policy_stats(), sum = policy_stats();
        const double expected = policy_loss(&c, &n, &b.batch, whole, whole_h, &one);
        double loss_sum = 0;
        for (int i = 0; i < FD_SEQUENCES;) {
            PolicyBatch m = b.batch;
            m.completions = i == 0 ? 2 : 1;
            m.offset += i;
            m.advantage += i;
            m.counts += i;
            loss_sum += policy_loss(&c, &n, &m, part, part_h, &sum);
            i += m.completions;
        }
        check_near(loss_sum, expected, 1e-3, 1e-12, "loss");
        assert_memory_equal(whole, part, sizeof whole);
        assert_memory_equal(whole_h, part_h, sizeof whole_h);
        LossMetric a[POLICY_METRICS], d[POLICY_METRICS];
        const int count = policy_metrics(&c, &one, a);
        assert_int_equal(count, policy_metrics(&c, &sum, d));
        for (int k = 0; k < count; k++) check_near(a[k].value, d[k].value, 1e-3, 1e-12, a[k].name);
        check_near(sum.sum.loss, expected, 1e-3, 1e-12, "stats.loss");
    }
}

/* old = NULL gives the same bits as old = logp. The ratio is then 1, and grpo, gspo, gmpo and rloo-per-token agree. */
static void test_on_policy(void **state) {
    (void)state;
    float grpo[FD_TOKENS];
    for (int loss = POLICY_GRPO; loss <= POLICY_KL_COV; loss++) {
        PolicyLossConfig c = policy_loss_config((PolicyLossKind)loss);
        FdBatch b;
        float with[FD_TOKENS], without[FD_TOKENS];
        fd_batch(&b, 7, 0.5);
        memcpy(b.old, b.logp, sizeof b.old);
        fd_loss(&c, &b, with, NULL);
        b.batch.old_logp = NULL;
        fd_loss(&c, &b, without, NULL);
        assert_memory_equal(with, without, sizeof with);
        PolicyStats stats = policy_stats();
        const PolicyNormaliser n = policy_normaliser(b.offset, FD_SEQUENCES, b.mask, NULL);
        policy_loss(&c, &n, &b.batch, with, NULL, &stats);
        assert_true(stats.max.ratio_gap == 0 && stats.max.ratio == 1 && stats.sum.square_log == 0 &&
                    stats.sum.region == 0);
        if (loss == POLICY_GRPO) memcpy(grpo, with, sizeof grpo);
        if (loss == POLICY_GSPO || loss == POLICY_GMPO)
            for (int t = 0; t < FD_TOKENS; t++) check_near(with[t], grpo[t], 1e-3, 1e-6, "gspo = gmpo = grpo");
    }
}

/* One token, one answer: the objective J = -L at a given ratio. */
static double objective(PolicyLossConfig c, double rho, double A, double *dlogp) {
    const int32_t offset[2] = {0, 1};
    const float logp = -1, old = (float)(-1 - log(rho)), advantage = (float)A;
    const PolicyBatch b = {
        .completions = 1, .offset = offset, .advantage = &advantage, .logp = &logp, .old_logp = &old};
    const PolicyNormaliser n = policy_normaliser(offset, 1, NULL, NULL);
    PolicyStats stats = policy_stats();
    float gradient;
    const double loss = policy_loss(&c, &n, &b, &gradient, NULL, &stats);
    if (dlogp) *dlogp = gradient;
    return -loss;
}

static void test_published_numbers(void **state) {
    (void)state;
    double d;
    PolicyLossConfig c = policy_loss_config(POLICY_GRPO);
    check_near(objective(c, 1.5, 1, &d), 1.2, 0, 1e-6, "clipped above");
    assert_true(d == 0);
    check_near(objective(c, 0.5, -1, &d), -0.8, 0, 1e-6, "clipped below");
    assert_true(d == 0);
    check_near(objective(c, 1.5, -1, &d), -1.5, 0, 1e-6, "not clipped where A < 0");
    check_near(d, 1.5, 0, 1e-6, "its gradient");
    c.delta = 3; /* dual clip with c = 3 (Ye et al. 2020) is the two-sided clip with delta = 3 */
    check_near(objective(c, 5, -1, &d), -3, 0, 1e-6, "dual clip");
    assert_true(d == 0);
    objective(policy_loss_config(POLICY_SAPO), 1, 1, &d);
    check_near(d, -1, 0, 1e-6, "SAPO's slope at rho = 1");
    c = policy_loss_config(POLICY_CISPO);
    objective(c, 9, 1, &d);
    check_near(d, -5, 0, 1e-6, "CISPO's cap");
    objective(policy_loss_config(POLICY_VESPO), 1, 1, &d);
    check_near(d, -1, 0, 1e-6, "VESPO's phi(1) = 1");
    objective(policy_loss_config(POLICY_VESPO), 2, 1, &d);
    check_near(d, -4 * exp(-3), 0, 1e-6, "VESPO's phi(2) = 2^2 e^-3");
}

/* KL(p || q) and the expected gradients of its estimators over a policy with four answers, all by enumeration. */
static void test_kl_expectations(void **state) {
    (void)state;
    const double p[4] = {0.5, 0.3, 0.15, 0.05}, q[4] = {0.4, 0.4, 0.1, 0.1};
    double KL = 0, mean[3] = {0}, gradient[5][4] = {{0}};
    for (int y = 0; y < 4; y++) KL += p[y] * log(p[y] / q[y]);
    for (int y = 0; y < 4; y++) {
        const double r = log(p[y] / q[y]);
        for (int k = 0; k < 3; k++) {
            double d;
            const double value = kl_estimate((KlEstimator)k, r, &d);
            mean[k] += p[y] * value;
            for (int z = 0; z < 4; z++) {
                const double dlogp_dz = (y == z) - p[z]; /* of a softmax */
                gradient[k][z] += p[y] * d * dlogp_dz;
                if (k != KL_K2) gradient[k == KL_K1 ? 3 : 4][z] += p[y] * (d + value) * dlogp_dz; /* rho k at rho = 1 */
            }
        }
    }
    check_near(KL, 0.05143, 0, 1e-4, "KL");
    check_near(mean[KL_K1], KL, 0, 1e-12, "E k1");
    check_near(mean[KL_K2], 0.04920, 0, 1e-4, "E k2");
    check_near(mean[KL_K3], KL, 0, 1e-12, "E k3");
    for (int z = 0; z < 4; z++) {
        const double reverse = p[z] * (log(p[z] / q[z]) - KL);
        check_near(gradient[KL_K1][z], 0, 1, 1e-12, "k1 in the loss does nothing");
        check_near(gradient[KL_K2][z], reverse, 1, 1e-12, "k2 in the loss");
        check_near(gradient[KL_K3][z], p[z] - q[z], 1, 1e-12, "k3 in the loss is the forward KL");
        check_near(gradient[3][z], reverse, 1, 1e-12, "rho k1");
        check_near(gradient[4][z], reverse, 1, 1e-12, "rho k3");
    }
}

static void test_masks(void **state) {
    (void)state;
    const int32_t offset[4] = {0, 3, 4, 6};
    const float entropy[64] = {0.1f, 0.5f, 0.3f, 9.0f, 0.2f, 0.4f};
    const uint8_t mask[3] = {1, 0, 1}, expected[6] = {0, 1, 1, 0, 0, 1};
    uint8_t keep[64];
    check_near(policy_entropy_keep(entropy, offset, 3, mask, 0.5, keep), 0.3, 0, 1e-6, "median of what counts");
    assert_memory_equal(keep, expected, 6); /* the threshold itself is kept */
    const PolicyNormaliser n = policy_normaliser(offset, 3, mask, keep);
    assert_true(n.completions == 3 && n.tokens == 5 && n.kept_tokens == 3 && n.window_tokens == 5);
    const uint8_t none[3] = {0, 0, 0}, nothing[6] = {0};
    assert_true(isnan(policy_entropy_keep(entropy, offset, 3, none, 0.5, keep)));
    assert_memory_equal(keep, nothing, 6);

    /* mean(log mu - log pi) is 0.25, 1 and 0.5: the threshold 0.5 drops the second answer, because its A is negative */
    const float logp[6] = {-1, -1, -1, -2, -1, -1}, mu[6] = {-0.75f, -1, -0.5f, -1, -0.5f, -0.5f};
    const float advantage[3] = {-1, -1, -1}, mixed[3] = {-1, 0, -1};
    PolicyBatch b = {.completions = 3, .offset = offset, .advantage = advantage, .logp = logp, .old_logp = mu};
    PolicyLossConfig c = policy_loss_config(POLICY_GRPO);
    c.off_policy_mask = 0.5;
    assert_true(policy_off_policy_keeps(&c, &b, 0) && !policy_off_policy_keeps(&c, &b, 1));
    assert_true(policy_off_policy_keeps(&c, &b, 2)); /* equal to the threshold */
    b.advantage = mixed;
    assert_true(policy_off_policy_keeps(&c, &b, 1)); /* A >= 0 is always kept */
}

/* GDPO with a KL penalty, in double: A = normalised(sum_k w_k z_k - penalty). The penalty's size matters. */
static void test_gdpo_with_penalty(void **state) {
    (void)state;
    enum { P = 2, G = 3, K = 2, N = P * G };
    const float parts[N * K] = {1, 0.2f, 0, 0.4f, 1, 0.9f, 0, 3, 0, 1, 1, 2};
    const double weight[K] = {1, 0.5};
    const float kl[N] = {0.3f, 0.1f, 0.9f, 0.2f, 0.8f, 0.4f};
    float last[N] = {0};
    for (int beta = 0; beta <= 2; beta++) {
        float penalty[N], A[N];
        double s[N] = {0}, mean = 0, variance = 0;
        for (int i = 0; i < N; i++) penalty[i] = (float)beta * kl[i];
        for (int g = 0; g < P; g++)
            for (int k = 0; k < K; k++) {
                double m = 0, v = 0;
                for (int i = g * G; i < (g + 1) * G; i++) m += parts[i * K + k] / (double)G;
                for (int i = g * G; i < (g + 1) * G; i++) v += pow(parts[i * K + k] - m, 2) / (G - 1);
                for (int i = g * G; i < (g + 1) * G; i++) s[i] += weight[k] * (parts[i * K + k] - m) / (sqrt(v) + 1e-4);
            }
        for (int i = 0; i < N; i++) s[i] -= penalty[i];
        for (int i = 0; i < N; i++) mean += s[i] / N;
        for (int i = 0; i < N; i++) variance += pow(s[i] - mean, 2) / (N - 1);
        AdvantageStats stats;
        advantage_gdpo(parts, weight, penalty, P, G, K, A, &stats);
        for (int i = 0; i < N; i++) check_near(A[i], (s[i] - mean) / (sqrt(variance) + 1e-4), 0, 1e-5, "gdpo");
        if (beta) assert_memory_not_equal(A, last, sizeof A);
        memcpy(last, A, sizeof A);
        double plain = 0;
        for (int i = 0; i < N; i++) plain += (parts[i * K] + 0.5 * parts[i * K + 1]) / N;
        check_near(stats.reward, plain, 0, 1e-6, "reward"); /* without the penalty */
    }
}

/* The entropy that steers the adaptive bonus is that of the kept tokens of completions that count. */
static void test_kept_entropy(void **state) {
    (void)state;
    const int32_t offset[] = {0, 2, 4};
    const float zero[4] = {-1, -1, -1, -1}, entropy[] = {0.5f, 2, 1, 4}, advantage[] = {1, -1};
    const uint8_t keep[] = {0, 1, 1, 1}, counts[] = {1, 0};
    const PolicyBatch b = {.completions = 2,
                           .offset = offset,
                           .advantage = advantage,
                           .counts = counts,
                           .logp = zero,
                           .entropy = entropy,
                           .keep = keep};
    const PolicyLossConfig c = policy_loss_config(POLICY_GRPO);
    const PolicyNormaliser n = policy_normaliser(offset, 2, counts, keep);
    PolicyStats s = policy_stats();
    policy_loss(&c, &n, &b, NULL, NULL, &s);
    assert_true(s.sum.kept == 1 && s.sum.kept_entropy == 2 && s.sum.tokens == 2 && s.sum.entropy == 2.5);
    /* entropies that are known after the loss alone have the same stats */
    PolicyBatch late = b;
    PolicyStats after = policy_stats();
    late.entropy = NULL;
    policy_loss(&c, &n, &late, NULL, NULL, &after);
    assert_true(after.sum.tokens == 2 && after.sum.kept == 0 && !after.max.has_entropy);
    policy_stats_entropy(&b, &after);
    assert_memory_equal(&s, &after, sizeof s);
}

static void test_advantage_identities(void **state) {
    (void)state;
    AdvantageStats stats;
    float a[16], b[16], reward[16];
    for (int i = 0; i < 16; i++) reward[i] = i < 8 ? 0.1f : (float)(i % 3);
    advantage_group(reward, 2, 8, SCALE_GROUP, a, &stats);
    for (int i = 0; i < 8; i++) assert_true(a[i] == 0); /* equal rewards: exactly 0 */
    check_near(stats.frac_reward_zero_std, 0.5, 0, 1e-12, "frac_reward_zero_std");
    assert_false(advantage_group_differs(reward, 8));
    assert_true(advantage_group_differs(reward + 8, 8));
    reward[8] = NAN;
    assert_true(advantage_group_differs(reward + 8, 8));
    for (int i = 9; i < 15; i++) reward[i] = NAN;
    assert_false(advantage_group_differs(reward + 8, 8)); /* a single reward has no other to differ from */
    for (int i = 0; i < 16; i++) reward[i] = (float)(i % 5);
    advantage_group(reward, 4, 4, SCALE_NONE, a, &stats);
    advantage_rloo(reward, 4, 4, false, b, &stats); /* RLOO = G / (G - 1) (r - mean) */
    for (int i = 0; i < 16; i++) check_near(b[i], a[i] * 4 / 3, 0, 1e-6, "rloo");
    for (int G = 2; G <= 16; G *= 2) { /* a binary reward with k of G correct: sum of A^2 = G - 1 up to eps */
        double squares = 0;
        for (int i = 0; i < G; i++) reward[i] = i == 0;
        advantage_group(reward, 1, G, SCALE_GROUP, a, &stats);
        for (int i = 0; i < G; i++) squares += (double)a[i] * a[i];
        check_near(squares, G - 1, 0, 1e-3, "unit deviation");
    }
}

static void test_empty_and_broken(void **state) {
    (void)state;
    const int32_t offset[4] = {0, 0, 2, 3};
    const uint8_t none[3] = {0, 0, 0};
    const float advantage[3] = {1, 1, -1};
    float logp[3] = {-1, -2, -3}, dlogp[3] = {9, 9, 9};
    PolicyBatch b = {.completions = 3, .offset = offset, .advantage = advantage, .counts = none, .logp = logp};
    for (int loss = POLICY_GRPO; loss <= POLICY_KL_COV; loss++) {
        const PolicyLossConfig c = policy_loss_config((PolicyLossKind)loss);
        PolicyStats stats = policy_stats();
        PolicyNormaliser n = policy_normaliser(offset, 3, none, NULL);
        b.counts = none; /* every answer is excluded: no gradient, and no division by 0 */
        assert_true(policy_loss(&c, &n, &b, dlogp, NULL, &stats) == 0);
        assert_true(dlogp[0] == 0 && dlogp[1] == 0 && dlogp[2] == 0 && stats.sum.counted == 0);
        b.counts = NULL; /* an answer without tokens is allowed */
        n = policy_normaliser(offset, 3, NULL, NULL);
        assert_true(isfinite(policy_loss(&c, &n, &b, dlogp, NULL, &stats)));
        logp[1] = NAN; /* must be visible, not clipped away */
        b.old_logp = advantage;
        assert_true(isnan(policy_loss(&c, &n, &b, dlogp, NULL, &stats)));
        logp[1] = -2;
        b.old_logp = NULL;
    }
    float weight[3] = {0, 0, 0}, lm[3] = {-INFINITY, -1, -2};
    assert_true(loss_nll(lm, weight, 3, 0, dlogp) == 0 && dlogp[0] == 0);
    weight[1] = 2;
    check_near(loss_nll(lm, weight, 3, 2, dlogp), 1, 0, 1e-12, "weighted nll");
    check_near(dlogp[1], -1, 0, 1e-12, "weighted nll");
    check_near(loss_nll(lm + 1, NULL, 2, 2, NULL), 1.5, 0, 1e-12, "nll");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policy_golden),
        cmocka_unit_test(test_advantage_golden),
        cmocka_unit_test(test_lm_and_entropy_control_golden),
        cmocka_unit_test(test_policy_finite_differences),
        cmocka_unit_test(test_kl_finite_differences),
        cmocka_unit_test(test_micro_batches),
        cmocka_unit_test(test_on_policy),
        cmocka_unit_test(test_published_numbers),
        cmocka_unit_test(test_kl_expectations),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_advantage_identities),
        cmocka_unit_test(test_gdpo_with_penalty),
        cmocka_unit_test(test_kept_entropy),
        cmocka_unit_test(test_empty_and_broken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
