/* test_advantage.c - the advantages of advantage_estimators.h: all subsets of a group, and the formulas in another form;
 * those of turns (advantage_turns.h) against loops from the formulas and values of the peers' code (golden/turns.txt,
 * written by dev/golden/golden_turns.py); LLDS against its formula; those of roles (advantage_roles.h) against values of
 * prime-rl's code (golden/roles.txt, written by dev/golden/golden_roles.py) and known answers. */
#include "../llmc/base/random.h"               /* Random, random_below, random_real, random_start */
#include "../llmc/loss/advantage.h"            /* AdvantageStats, ScaleRewards, SCALE_GROUP, advantage_group, ... */
#include "../llmc/loss/advantage_estimators.h" /* ADVANTAGE_PASS_K, advantage_estimate, advantage_takes, ... */
#include "../llmc/loss/advantage_roles.h"      /* advantage_rae, advantage_peers */
#include "../llmc/loss/advantage_turns.h"      /* CREDIT_TURN, CREDIT_GIGPO, TurnCredit, TurnRewards, ... */
#include "../llmc/loss/llds.h"                 /* LldsStats, llds_loss */
#include "../llmc/loss/policy.h"               /* PolicyBatch */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <float.h>
#include "golden.h" /* golden, golden_floats, Golden, golden_count, ... */

enum { P = 3, G = 6 };

static void near(double a, double b) {
    if (!(fabs(a - b) <= 1e-5 * fmax(1, fabs(b)))) fail_msg("%.9g is not %.9g", a, b);
}

/* The advantage of a completion is the mean over all subsets of k that hold it. */
static void pass_k_is_the_mean_over_subsets(void **state) {
    (void)state;
    Random random = random_start(2, 0);
    for (int trial = 0; trial < 200; trial++) {
        float reward[G], advantage[G];
        const int k = 1 + trial % G;
        AdvantageStats stats;
        for (int i = 0; i < G; i++) reward[i] = (float)random_below(&random, 2);
        advantage_estimate(ADVANTAGE_PASS_K, reward, NULL, 1, G, k, advantage, &stats);
        double all = 0, subsets = 0, sum[G] = {0}, count[G] = {0};
        for (int pass = 0; pass < 2; pass++)
            for (unsigned set = 0; set < 1u << G; set++) {
                if (__builtin_popcount(set) != k) continue;
                double best = 0;
                for (int i = 0; i < G; i++) best = set >> i & 1 && reward[i] > best ? reward[i] : best;
                if (!pass) all += best, subsets++;
                const double R = all / subsets, s = sqrt(R * (1 - R));
                for (int i = 0; pass && i < G; i++) {
                    if (!(set >> i & 1)) continue;
                    sum[i] += s > 0 ? (best - R) / s : 0;
                    count[i]++;
                }
            }
        for (int i = 0; i < G; i++) near(advantage[i], sum[i] / count[i]);
    }
}

static void others_are_their_formulas(void **state) {
    (void)state;
    Random random = random_start(3, 0);
    for (int trial = 0; trial < 100; trial++) {
        float reward[P * G], A[P * G];
        int32_t offset[P * G + 1] = {0};
        AdvantageStats stats;
        for (int i = 0; i < P * G; i++) {
            reward[i] = i / G == 1 ? 0.5f : (float)random_real(&random); /* the second group's are equal */
            offset[i + 1] = offset[i] + 1 + (int32_t)random_below(&random, 9);
        }
        for (int kind = ADVANTAGE_MAX_RL; kind <= ADVANTAGE_GPG; kind++) {
            if (kind == ADVANTAGE_PASS_K) continue;
            advantage_estimate((AdvantageEstimator)kind, reward, offset, P, G, 0, A, &stats);
            near(stats.frac_reward_zero_std, 1.0 / P);
            for (int g = 0; g < P; g++) {
                const float *r = reward + g * G;
                double mean = 0, weighted = 0, tokens = 0, squares = 0;
                int best = 0;
                for (int i = 0; i < G; i++) {
                    const int T = offset[g * G + i + 1] - offset[g * G + i];
                    mean += r[i] / (double)G;
                    weighted += T * (double)r[i];
                    tokens += T;
                    best = r[i] > r[best] ? i : best;
                }
                for (int i = 0; i < G; i++) squares += (r[i] - mean) * (r[i] - mean);
                double second = 0;
                for (int i = 0; i < G; i++) second = i != best && r[i] > second ? r[i] : second;
                for (int i = 0; i < G; i++) {
                    const double want = kind == ADVANTAGE_MAX_RL ? r[i] / mean - 1
                                        : kind == ADVANTAGE_OPO  ? r[i] - weighted / tokens
                                        : kind == ADVANTAGE_GPG  ? 1.5 * (r[i] - mean)
                                        : i == best              ? (r[i] - second) / (sqrt(squares / (G - 1)) + 1e-6)
                                                                 : 0;
                    near(A[g * G + i], want);
                }
            }
        }
    }
}

/* Completions without a score change nothing, and have no advantage; neither have groups without a right answer. */
static void unscored_completions(void **state) {
    (void)state;
    const float reward[] = {1, NAN, 0, 1, 0, NAN}, fewer[] = {1, 0, 1, 0}, zeros[4] = {0};
    const int32_t offset[] = {0, 3, 9, 10, 14, 15, 20}, shorter[] = {0, 3, 4, 8, 9};
    const int of[] = {0, 2, 3, 4};
    float A[6], B[4];
    AdvantageStats stats;
    for (int kind = ADVANTAGE_MAX_RL; kind <= ADVANTAGE_GPG; kind++) {
        advantage_estimate((AdvantageEstimator)kind, reward, offset, 1, 6, 2, A, &stats);
        advantage_estimate((AdvantageEstimator)kind, fewer, shorter, 1, 4, 2, B, &stats);
        assert_true(A[1] == 0 && A[5] == 0);
        for (int i = 0; i < 4; i++) near(A[of[i]], B[i]);
        advantage_estimate((AdvantageEstimator)kind, zeros, shorter, 1, 4, 2, B, &stats);
        for (int i = 0; i < 4; i++) assert_true(B[i] == 0);
    }
    assert_false(advantage_takes(ADVANTAGE_MAX_RL, -0.5f));
    assert_false(advantage_takes(ADVANTAGE_PASS_K, 0.5f));
    assert_true(advantage_takes(ADVANTAGE_PASS_K, 1) && advantage_takes(ADVANTAGE_PASS_K, NAN));
    assert_true(advantage_takes(ADVANTAGE_OPO, -3));
}

/* ---- turns ------------------------------------------------------------------------------------------------------ */

enum { TURNS = 5 * P * G };

/* What the C code makes of golden values of GiGPO. */
static void gigpo_golden(const Golden *g) {
    const int n = golden_count(g, "turns");
    const double *turns = golden(g, "turns"), *want = golden(g, "advantage"), *key = golden(g, "state");
    float *reward = golden_floats(g, "reward"), *outcome = golden_floats(g, "outcome"),
          *total = golden_floats(g, "total");
    float advantage[P * G], addition[TURNS];
    uint64_t state[TURNS];
    int32_t turn[P * G + 1] = {0};
    AdvantageStats stats;
    for (int i = 0; i < n; i++) turn[i + 1] = turn[i] + (int32_t)turns[i];
    for (int k = 0; k < turn[n]; k++) state[k] = (uint64_t)key[k];
    const ScaleRewards scale = *golden(g, "std") ? SCALE_GROUP : SCALE_NONE;
    const TurnCredit c = {CREDIT_GIGPO, scale, 0, *golden(g, "gamma"), *golden(g, "weight")};
    const TurnRewards t = {turn, reward, state, outcome, total};
    advantage_group(total, n / 4, 4, scale, advantage, &stats);
    const double size = advantage_turns(&c, &t, n / 4, 4, advantage, addition);
    assert_true(size > 1 && size < 5);
    for (int i = 0; i < n; i++)
        for (int k = turn[i]; k < turn[i + 1]; k++) {
            if (!(fabs(advantage[i] + addition[k] - want[k]) < 2e-5 * fmax(1, fabs(want[k]))))
                fail_msg("%s: turn %d has %g, not %g", g->name, k, advantage[i] + addition[k], want[k]);
        }
    free(reward), free(outcome), free(total);
}

/* The same of MT-GRPO: two turns, of which the first has a reward. */
static void mt_golden(const Golden *g) {
    const int n = golden_count(g, "outcome");
    const double *first = golden(g, "reward"), *want = golden(g, "advantage");
    float *outcome = golden_floats(g, "outcome"), reward[2 * P * G], advantage[P * G], addition[2 * P * G];
    const uint64_t state[2 * P * G] = {0};
    int32_t turn[P * G + 1] = {0};
    AdvantageStats stats;
    for (int i = 0; i < n; i++) {
        turn[i + 1] = 2 * i + 2;
        reward[2 * i] = (float)first[i];
        reward[2 * i + 1] = NAN;
    }
    const TurnCredit c = {CREDIT_TURN, SCALE_GROUP, *golden(g, "weight"), 1, 1};
    const TurnRewards t = {turn, reward, state, outcome, outcome};
    advantage_group(outcome, n / 4, 4, SCALE_GROUP, advantage, &stats);
    advantage_turns(&c, &t, n / 4, 4, advantage, addition);
    for (int k = 0; k < 2 * n; k++) near(advantage[k / 2] + addition[k], want[k]);
    free(outcome);
}

static void turns_are_those_of_peers(void **state) {
    (void)state;
    FILE *f = golden_open("turns.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g), cases++)
        if (!strcmp(g.family, "gigpo")) gigpo_golden(&g);
        else mt_golden(&g);
    fclose(f);
    assert_int_equal(cases, 5);
}

/* A random set of trajectories: turns with and without a reward, one that was not scored. */
typedef struct World {
    int32_t turn[P * G + 1];
    float reward[TURNS], outcome[P * G], total[P * G];
    uint64_t state[TURNS];
} World;

static void make_world(World *w, Random *random) {
    *w = (World){0};
    for (int i = 0; i < P * G; i++) {
        w->turn[i + 1] = w->turn[i] + 1 + (int32_t)random_below(random, 5);
        w->outcome[i] = (float)random_below(random, 3) / 2;
        double sum = w->outcome[i];
        for (int k = w->turn[i]; k < w->turn[i + 1]; k++) {
            w->reward[k] = random_below(random, 3) ? (float)random_real(random) : NAN;
            w->state[k] = k == w->turn[i] ? 0 : 1 + random_below(random, 4);
            sum += isnan(w->reward[k]) ? 0 : w->reward[k];
        }
        w->total[i] = i == 4 ? NAN : (float)sum;
    }
}

/* z of x[of] over the values of a group that `in` marks: a loop from the formula. scale: over those of all groups. */
static double z_of(const double *x, const bool *in, const int *group, int n, int of, ScaleRewards scale) {
    double mean[2] = {0}, count[2] = {0}, squares[2] = {0};
    for (int all = 0; all < 2; all++) {
        for (int i = 0; i < n; i++)
            if (in[i] && (all || group[i] == group[of])) mean[all] += x[i], count[all]++;
        mean[all] /= count[all];
        for (int i = 0; i < n; i++)
            if (in[i] && (all || group[i] == group[of])) squares[all] += (x[i] - mean[all]) * (x[i] - mean[all]);
    }
    if (!in[of] || count[0] < 2) return 0;
    const int all = scale == SCALE_BATCH;
    return (x[of] - mean[0]) / (scale == SCALE_NONE ? 1 : sqrt(squares[all] / (count[all] - 1)) + 1e-4);
}

/* sum_(j >= k) gamma^(j-k) r_ij, of which the last has the outcome in it. */
static double return_of(const World *w, int i, int k, double gamma) {
    double sum = 0;
    for (int j = k; j < w->turn[i + 1]; j++) {
        const double r = (isnan(w->reward[j]) ? 0 : w->reward[j]) + (j + 1 == w->turn[i + 1] ? w->outcome[i] : 0);
        sum += pow(gamma, j - k) * r;
    }
    return sum;
}

static void turns_are_their_formulas(void **state) {
    (void)state;
    Random random = random_start(5, 0);
    for (int trial = 0; trial < 200; trial++) {
        World w;
        make_world(&w, &random);
        const double gamma = trial % 3 ? 0.9 : 1, weight = 0.5 + trial % 2;
        const AdvantageLevel level = (AdvantageLevel)(1 + trial % 3);
        const ScaleRewards scale = (ScaleRewards)(level == CREDIT_GIGPO ? 2 * (trial / 3 % 2) : trial / 3 % 3);
        const TurnRewards t = {w.turn, w.reward, w.state, w.outcome, w.total};
        const TurnCredit c = {level, scale, weight, gamma, weight};
        float advantage[P * G], addition[TURNS], base[P * G];
        AdvantageStats stats;
        for (int i = 0; i < P * G; i++) base[i] = i == 4 ? NAN : level == CREDIT_TURN ? w.outcome[i] : w.total[i];
        advantage_group(base, P, G, scale, advantage, &stats);
        advantage_turns(&c, &t, P, G, advantage, addition);
        double x[TURNS], whole[P * G];
        bool in[TURNS], scored[P * G];
        int group[TURNS], of[P * G];
        for (int i = 0; i < P * G; i++) {
            whole[i] = base[i];
            scored[i] = i != 4;
            of[i] = i / G;
        }
        for (int i = 0; i < P * G; i++)
            for (int k = w.turn[i]; k < w.turn[i + 1]; k++) {
                const int n = w.turn[P * G];
                for (int j = 0; j < P * G; j++)
                    for (int l = w.turn[j]; l < w.turn[j + 1]; l++) {
                        group[l] = j / G;
                        in[l] = j != 4;
                        x[l] = level == CREDIT_TURN ? w.reward[l] : return_of(&w, j, l, gamma);
                        if (level == CREDIT_TURN)
                            in[l] = in[l] && l - w.turn[j] == k - w.turn[i] && !isnan(w.reward[l]);
                        if (level == CREDIT_GIGPO) in[l] = in[l] && w.state[l] == w.state[k];
                    }
                const double z = z_of(x, in, group, n, k, scale), A = z_of(whole, scored, of, P * G, i, scale);
                near(advantage[i] + addition[k], i == 4 ? 0 : level == CREDIT_RETURN ? z : A + weight * z);
            }
    }
}

/* The loss of LLDS, and its gradient, are those of the formula. */
static void llds_is_its_formula(void **state) {
    (void)state;
    enum { N = 12 };
    Random random = random_start(6, 0);
    const int32_t offset[] = {0, 5, 8, 12}, turn[N] = {0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 2, 2};
    const uint8_t counts[] = {1, 1, 1}, fewer[] = {1, 0, 1};
    double active = 0;
    for (int trial = 0; trial < 100; trial++) {
        float old[N], logp[N], dlogp[N], addition[N];
        float A[] = {0.5f, 1, -0.2f};
        for (int t = 0; t < N; t++) {
            old[t] = (float)-random_real(&random) - 1;
            logp[t] = old[t] + (float)(random_real(&random) - 0.6);
            addition[t] = turn[t] == 1 ? 0.4f : 0;
            dlogp[t] = 0;
        }
        const PolicyBatch b = {.completions = 3,
                               .offset = offset,
                               .advantage = A,
                               .token_advantage = addition,
                               .counts = trial % 2 ? counts : fewer,
                               .logp = logp,
                               .old_logp = old};
        LldsStats stats = {0};
        const double loss = llds_loss(0.3, N, &b, turn, dlogp, &stats);
        double want = 0;
        for (int i = 0; i < 3; i++)
            for (int k = 0; k < 3; k++) {
                double fall = 0, tokens = 0;
                for (int t = offset[i]; t < offset[i + 1]; t++) {
                    if (turn[t] != k) continue;
                    fall += (double)old[t] - logp[t];
                    tokens += fmax(0, (double)old[t] - logp[t]);
                }
                const bool good = A[i] + (k == 1 ? 0.4 : 0) >= 0 && b.counts[i];
                const bool here = good && fall > 0;
                want += here ? 0.3 * tokens / N : 0;
                active += here;
                for (int t = offset[i]; t < offset[i + 1]; t++)
                    if (turn[t] == k) near(dlogp[t], here && logp[t] < old[t] ? -0.3 / N : 0);
            }
        near(loss, want);
        near(loss, 0.3 * stats.loss);
    }
    assert_true(active > 50);
}

/* rae and hierarchical_grpo as prime-rl's classes compute them in float64; ours are stored as float32. */
static void roles_are_those_of_prime_rl(void **state) {
    (void)state;
    enum { N = 24, SIZE = 8 };
    FILE *f = golden_open("roles.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g), cases++) {
        const double *want = golden(&g, "advantage"), *roles = golden(&g, "roles"), *episodes = golden(&g, "episodes");
        const bool rae = !strcmp(g.family, "rae");
        float *reward = golden_floats(&g, "reward"), advantage[N];
        double baseline[2] = {0};
        assert_int_equal(golden_count(&g, "advantage"), N);
        for (int at = 0; at < N; at += SIZE) {
            int32_t role[SIZE], order[SIZE], peers[SIZE];
            for (int i = 0; i < SIZE; i++) {
                role[i] = (int32_t)roles[at + i];
                order[i] = i;
                const bool scoped = !rae && (role[i] == 1 || golden(&g, "both")[0] > 0);
                peers[i] = 100 * role[i] + (scoped ? (int32_t)episodes[at + i] : 0);
            }
            if (!rae) advantage_peers(reward + at, peers, SIZE, advantage + at);
            else advantage_rae(reward + at, role, order, SIZE, golden(&g, "decay")[0], baseline, advantage + at);
            for (int k = 0; rae && k < 2; k++)
                if (fabs(baseline[k] - golden(&g, "baseline")[at / SIZE * 2 + k]) > 1e-15)
                    fail_msg("%s: baseline", g.name);
        }
        for (int i = 0; i < N; i++)
            if (fabs((double)advantage[i] - want[i]) > 0.5 * FLT_EPSILON * fabs(want[i]) + 1e-15)
                fail_msg("%s %s: advantage %d is %.9g, not %.9g", g.family, g.name, i, (double)advantage[i], want[i]);
        free(reward);
    }
    fclose(f);
    assert_int_equal(cases, 6);
}

/* Known answers: for a constant reward c the advantage is c decay^t; the baseline of one role is the moving average in closed form;
 * the order is that of `order`, not of the array; completions without a reward change nothing. */
static void rae_has_known_answers(void **state) {
    (void)state;
    enum { N = 40 };
    float reward[N], advantage[N], again[N];
    int32_t role[N], order[N], reverse[N];
    Random random = random_start(9, 0);
    double baseline[2] = {0};
    for (int i = 0; i < N; i++) {
        reward[i] = 3;
        role[i] = 0;
        order[i] = i;
        reverse[i] = N - 1 - i;
    }
    advantage_rae(reward, role, order, N, 0.9, baseline, advantage);
    for (int i = 0; i < N; i++) near(advantage[i], 3 * pow(0.9, i));
    for (int i = 0; i < N; i++) reward[i] = i % 7 == 3 ? NAN : (float)random_real(&random);
    baseline[0] = 0.25;
    advantage_rae(reward, role, reverse, N, 0.9, baseline, advantage);
    for (int i = N - 1; i >= 0; i--) {
        double b = 0, seen = 0;
        for (int j = i + 1; j < N; j++) { /* b = sum_j 0.1 0.9^(rewards between j and i) r_j + 0.9^(rewards) 0.25 */
            if (isnan(reward[j])) continue;
            b += 0.1 * pow(0.9, seen++) * (double)reward[j];
        }
        near(advantage[i], isnan(reward[i]) ? 0 : (double)reward[i] - b - pow(0.9, seen) * 0.25);
    }
    /* two roles are two runs of one */
    double one[2] = {0}, two[2] = {0};
    for (int i = 0; i < N; i++) role[i] = i % 3 == 0;
    advantage_rae(reward, role, order, N, 0.9, two, advantage);
    for (int k = 0; k < 2; k++) {
        int32_t n = 0;
        for (int i = 0; i < N; i++)
            if (role[i] == k) order[n++] = i;
        advantage_rae(reward, role, order, n, 0.9, one, again);
        for (int i = 0; i < n; i++) assert_true(again[order[i]] == advantage[order[i]]);
    }
    assert_true(one[0] == two[0] && one[1] == two[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(pass_k_is_the_mean_over_subsets),
                                       cmocka_unit_test(others_are_their_formulas),
                                       cmocka_unit_test(unscored_completions),
                                       cmocka_unit_test(turns_are_those_of_peers),
                                       cmocka_unit_test(turns_are_their_formulas),
                                       cmocka_unit_test(llds_is_its_formula),
                                       cmocka_unit_test(roles_are_those_of_prime_rl),
                                       cmocka_unit_test(rae_has_known_answers)};
    return cmocka_run_group_tests_name("advantage", tests, NULL, NULL);
}
