/* test_optimum.c - training against the exact optimum of the objective.
 *
 * With a vocabulary of twelve tokens, two prompts and answers of one token, all answers can be enumerated. The policy
 * that maximises an objective is then known in closed form, and training must approach it.
 *
 *   objective                    maximised by                             estimator
 *   E r - beta KL(pi || ref)     pi = ref exp(r / beta) / Z               k3 with bias correction, k2, k1 in the reward
 *   E r - beta KL(ref || pi)     pi = beta ref / (lambda - r), sum = 1    k3 without the correction
 *   E r + alpha H(pi)            pi = exp(r / alpha) / Z                  the entropy bonus
 *
 * Every algorithm of train_ppo maximises the first of them.
 */
#include "../llmc/base/error.h"        /* Error, xmalloc */
#include "../llmc/cpu/cpu.h"           /* backend_cpu */
#include "../llmc/loss/advantage.h"    /* AdvantageStats, SCALE_NONE, advantage_group, advantage_rloo */
#include "../llmc/loss/aggregation.h"  /* AGG_TOKEN_MEAN, LossNormaliser */
#include "../llmc/loss/gae.h"          /* mean_baseline, gae, subtract_baseline, token_rewards, ... */
#include "../llmc/loss/kl.h"           /* KL_K3, KL_K1, KL_K2, KlEstimator, ... */
#include "../llmc/loss/policy.h"       /* POLICY_GRPO, POLICY_RLOO, POLICY_CISPO, POLICY_DAPO, ... */
#include "../llmc/loss/ppo.h"          /* PpoBatch, PpoConfig, PpoStats, ppo_config, ... */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/config.h"      /* ModelConfig, gpt2_config */
#include "../llmc/model/model.h"       /* Model, model_free, model_copy, model_init, ... */
#include "../llmc/model/optimizer.h"   /* Optimizer, optimizer_free, optimizer_new, optimizer_step */
#include "../llmc/model/pack.h"        /* batch_free, batch_new, batch_segment, batch_clear, ... */
#include "../llmc/model/tensors.h"     /* INIT_NORMAL, TENSOR_COUNT */
#include "../llmc/model/transformer.h" /* model_forward, ModelOutput, model_backward, model_logits */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "../llmc/rollout/rollout.h"   /* Completion, Rollout, RolloutRequest, completion_free, ... */
#include "models.h"                    /* models_device, models_setup, models_teardown */

enum { V = 12, P = 2, G = 192, STEPS = 240, ROWS = P * (G + 2) };

static const double reward[P][V] = {{0, 0.2, 1, 0.5, 0, 0.9, 0.3, 0, 0.6, 0.1, 0, 0.4},
                                    {1, 0, 0, 0.1, 0.8, 0.2, 0, 0.7, 0, 0.5, 0.9, 0}};
static const int32_t prompt[P] = {3, 7};

typedef struct Method {
    PolicyLossKind loss;
    KlEstimator kl;
    bool correction, in_reward;
    double beta, entropy_coef;
    int iterations;
} Method;

static Model new_model(bool value_head) {
    Error e;
    Model m;
    ModelConfig c = gpt2_config(1, 2, 16, V, 4);
    c.value_head = value_head;
    if (!model_new(&m, &c, backend_cpu(), models_device, true, &e)) fail_msg("%s", e.text);
    model_init(&m, 5);
    float *w = (float *)xmalloc(m.parameters * sizeof *w); /* larger weights: a reference that is not uniform */
    m.backend->weights_download(m.device, w, m.weights, m.parameters);
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (size_t k = 0; k < m.tensor[i].size; k++)
            if (m.tensor[i].init == INIT_NORMAL) w[m.tensor[i].offset + k] *= 12;
    m.backend->weights_upload(m.device, m.weights, w, m.parameters);
    free(w);
    return m;
}

/* pi(. | prompt) for each prompt. */
static void policy_of(const Model *m, double pi[P][V]) {
    Error e;
    Workspace w = {0};
    float logits[P * V];
    Batch b = batch_new(P, P, P);
    if (!workspace_new(&w, m, P, P, P, false, 0, &e)) fail_msg("%s", e.text);
    for (int p = 0; p < P; p++) batch_target(&b, batch_last_row(&b, batch_segment(&b, &prompt[p], 1, 0, -1)), 0);
    if (!model_logits(m, &w, &b, logits, &e)) fail_msg("%s", e.text);
    for (int p = 0; p < P; p++)
        for (int v = 0; v < V; v++) {
            double sum = 0;
            for (int u = 0; u < V; u++) sum += exp((double)logits[p * V + u] - logits[p * V + v]);
            pi[p][v] = 1 / sum;
        }
    workspace_free(&w, m), batch_free(&b);
}

static void normalise(double x[V]) {
    double sum = 0;
    for (int v = 0; v < V; v++) sum += x[v];
    for (int v = 0; v < V; v++) x[v] /= sum;
}

/* The lambda above the largest reward at which the probabilities sum to one. */
static void reverse_optimum(const double ref[V], const double r[V], double beta, double best[V]) {
    double low = 1, high = 1 + beta * V;
    for (int i = 0; i < 200; i++) {
        const double middle = (low + high) / 2;
        double sum = 0;
        for (int v = 0; v < V; v++) sum += beta * ref[v] / (middle - r[v]);
        if (sum > 1) low = middle;
        else high = middle;
    }
    for (int v = 0; v < V; v++) best[v] = beta * ref[v] / (low - r[v]);
}

static double divergence(const double p[V], const double q[V]) {
    double sum = 0;
    for (int v = 0; v < V; v++) sum += p[v] * log(p[v] / q[v]);
    return sum;
}

/* Log-probabilities and entropies of all answers. */
static void pack_answers(Batch *b, const Completion *answer) {
    batch_clear(b);
    for (int p = 0; p < P; p++) {
        const int segment = batch_segment(b, &prompt[p], 1, 0, -1);
        for (int i = 0; i < G; i++) batch_completion(b, segment, answer[p * G + i].tokens, NULL, 1);
    }
}

/* Samples G answers of one token to each prompt. */
static void sample_answers(Rollout *engine, int step, Completion answer[P * G]) {
    Error e;
    Sampling s = sampling_default();
    s.max_new = 1;
    s.seed = 11;
    RolloutRequest q[P];
    for (int p = 0; p < P; p++)
        q[p] = (RolloutRequest){.prompt = &prompt[p],
                                .prompt_len = 1,
                                .samples = G,
                                .id = (uint64_t)(step * P * G + p * G),
                                .out = answer + p * G};
    if (!rollout_run(engine, &s, q, P, NULL, NULL, &e)) fail_msg("%s", e.text);
}

/* Trains a new model by a method. pi: the trained policy, ref: the initial one. */
static void train(const Method *how, double pi[P][V], double ref[P][V]) {
    enum { N = P * G };
    Error e;
    Model m = new_model(false), reference = {0};
    Workspace w = {0};
    Optimizer o = {0};
    Rollout engine = {0};
    Batch b = batch_new(ROWS, N, ROWS);
    static float logp[N], old[N], ref_logp[N], sampler[N], entropy[N], dlogp[N], dentropy[N], r[N], advantage[N];
    static int32_t offset[N + 1];
    static Completion answer[N];
    if (!model_copy(&reference, &m, &e) || !workspace_new(&w, &m, ROWS, N, ROWS, true, 0, &e) ||
        !optimizer_new(&o, &m, &e) || !rollout_new(&engine, &m, 64, 1, 1, &e))
        fail_msg("%s", e.text);
    policy_of(&m, ref);
    PolicyLossConfig c = policy_loss_config(how->loss);
    c.kl = how->kl;
    c.kl_bias_correction = how->correction;
    c.beta = how->in_reward ? 0 : how->beta;
    c.entropy_coef = how->entropy_coef;
    c.max_completion_length = 1;
    for (int i = 0; i <= N; i++) offset[i] = i;
    for (int step = 0; step < STEPS; step++) {
        sample_answers(&engine, step, answer);
        pack_answers(&b, answer);
        const ModelOutput at_reference = {.logp = ref_logp}, at_old = {.logp = old};
        model_forward(&reference, &w, &b, 1.0f, &at_reference);
        model_forward(&m, &w, &b, 1.0f, &at_old);
        for (int i = 0; i < N; i++) {
            r[i] = (float)reward[i / G][answer[i].tokens[0]];
            sampler[i] = answer[i].logp[0];
        }
        if (how->in_reward) kl_from_rewards(how->kl, sampler, ref_logp, offset, N, how->beta, r, NULL);
        AdvantageStats stats;
        if (how->loss == POLICY_RLOO) advantage_rloo(r, P, G, false, advantage, &stats);
        else advantage_group(r, P, G, SCALE_NONE, advantage, &stats);
        for (int i = 0; i < how->iterations; i++) {
            PolicyStats sums = policy_stats();
            const ModelOutput now = {.logp = logp, .entropy = entropy};
            model_forward(&m, &w, &b, 1.0f, &now);
            const PolicyBatch batch = {.completions = N,
                                       .offset = offset,
                                       .advantage = advantage,
                                       .logp = logp,
                                       .old_logp = how->iterations > 1 ? old : NULL,
                                       .ref_logp = c.beta > 0 ? ref_logp : NULL,
                                       .sampler_logp = sampler,
                                       .entropy = entropy};
            const PolicyNormaliser n = policy_normaliser(offset, N, NULL, NULL);
            policy_loss(&c, &n, &batch, dlogp, dentropy, &sums);
            model_backward(&m, &w, &b, 1.0f, dlogp, c.entropy_coef != 0 ? dentropy : NULL, NULL);
            optimizer_step(&o, &m, 0.02 * (1 - (double)step / STEPS) / how->iterations);
        }
        for (int i = 0; i < N; i++) completion_free(&answer[i]);
    }
    policy_of(&m, pi);
    rollout_free(&engine), optimizer_free(&o, &m), workspace_free(&w, &m), batch_free(&b);
    model_free(&reference), model_free(&m);
}

/* ---- train_ppo's algorithms ------------------------------------------------------------------------------------ */

typedef enum { PPO, A2C, REINFORCE, RLOO, REMAX, REINFORCE_PP, REINFORCE_PP_BASELINE, ALGOS } Algo;

/* ReMax's baseline: the reward of the likeliest answer. */
static double greedy_reward(const double pi[V], int p) {
    int best = 0;
    for (int v = 1; v < V; v++)
        if (pi[v] > pi[best]) best = v;
    return reward[p][best];
}

/* The advantages for answers of one token, computed as in train_ppo. */
static void advantages_of(Algo algo, const float *r, const float *value, const int32_t *offset, const double pi[P][V],
                          float *advantage) {
    enum { N = P * G };
    static uint8_t counts[N];
    static float baseline[N];
    memset(counts, 1, sizeof counts);
    if (algo == REINFORCE) mean_baseline(r, counts, N, N, false, baseline);
    if (algo == RLOO) mean_baseline(r, counts, N, G, false, baseline);
    if (algo == REINFORCE_PP_BASELINE) mean_baseline(r, counts, N, G, true, baseline);
    for (int i = 0; i < N; i++) {
        if (algo == REMAX) baseline[i] = (float)greedy_reward(pi[i / G], i / G);
        if (algo == REINFORCE_PP) baseline[i] = 0;
        if (algo == PPO || algo == A2C) gae(r + i, value + i, 1, 1, 0.95, advantage + i);
        else subtract_baseline(r + i, 1, baseline[i], advantage + i);
    }
    if (algo == PPO || algo == REINFORCE_PP || algo == REINFORCE_PP_BASELINE)
        whiten(advantage, offset, N, counts, true);
}

/* As train() above, by an algorithm of train_ppo with k1 in the reward. */
static void train_algo(Algo algo, double beta, double pi[P][V], double ref[P][V]) {
    enum { N = P * G };
    Error e;
    const bool critic = algo == PPO || algo == A2C;
    const int epochs = algo == PPO ? 2 : 1;
    Model m = new_model(critic), reference = {0};
    Workspace w = {0};
    Optimizer o = {0};
    Rollout engine = {0};
    Batch b = batch_new(ROWS, N, ROWS);
    static float logp[N], old[N], ref_logp[N], value[N], old_value[N], target[N], r[N], advantage[N], dlogp[N],
        dvalue[N];
    static int32_t offset[N + 1];
    static uint8_t counts[N];
    static Completion answer[N];
    if (!model_copy(&reference, &m, &e) || !workspace_new(&w, &m, ROWS, N, ROWS, true, 0, &e) ||
        !optimizer_new(&o, &m, &e) || !rollout_new(&engine, &m, 64, 1, 1, &e))
        fail_msg("%s", e.text);
    policy_of(&m, ref);
    PpoConfig c = ppo_config();
    c.plain = algo == A2C || algo == REINFORCE;
    for (int i = 0; i <= N; i++) offset[i] = i;
    memset(counts, 1, sizeof counts);
    for (int step = 0; step < STEPS; step++) {
        sample_answers(&engine, step, answer);
        pack_answers(&b, answer);
        const ModelOutput at_reference = {.logp = ref_logp}, at_old = {.logp = old, .value = critic ? old_value : NULL};
        model_forward(&reference, &w, &b, 1.0f, &at_reference);
        model_forward(&m, &w, &b, 1.0f, &at_old);
        for (int i = 0; i < N; i++)
            token_rewards(KL_K1, old + i, ref_logp + i, 1, beta, reward[i / G][answer[i].tokens[0]], r + i);
        if (algo == REMAX) policy_of(&m, pi);
        advantages_of(algo, r, old_value, offset, pi, advantage);
        for (int i = 0; i < N; i++) target[i] = r[i];
        for (int i = 0; i < epochs; i++) {
            PpoStats sums = {0};
            const ModelOutput now = {.logp = logp, .value = critic ? value : NULL};
            model_forward(&m, &w, &b, 1.0f, &now);
            const PpoBatch batch = {.completions = N,
                                    .offset = offset,
                                    .counts = counts,
                                    .logp = logp,
                                    .old_logp = epochs > 1 ? old : NULL,
                                    .advantage = advantage,
                                    .value = value,
                                    .old_value = old_value,
                                    .target = target};
            const LossNormaliser all = ppo_normaliser(AGG_TOKEN_MEAN, 0, offset, N, counts);
            ppo_policy_loss(&c, &all, &batch, dlogp, NULL, &sums);
            if (critic) ppo_value_loss(&c, &all, &batch, dvalue, &sums);
            model_backward(&m, &w, &b, 1.0f, dlogp, NULL, critic ? dvalue : NULL);
            optimizer_step(&o, &m, 0.02 * (1 - (double)step / STEPS) / epochs);
        }
        for (int i = 0; i < N; i++) completion_free(&answer[i]);
    }
    policy_of(&m, pi);
    rollout_free(&engine), optimizer_free(&o, &m), workspace_free(&w, &m), batch_free(&b);
    model_free(&reference), model_free(&m);
}

static void assert_optimum(const char *name, const double pi[V], const double best[V], double limit) {
    const double d = divergence(pi, best);
    if (!(d < limit)) {
        for (int v = 0; v < V; v++) print_message("%2d %.4f, expected %.4f\n", v, pi[v], best[v]);
        fail_msg("%s: %.4f nats from the optimum", name, d);
    }
}

static void kl_to_the_reference(void **state) {
    (void)state;
    static const struct {
        const char *name;
        Method how;
    } method[] = {{"grpo k3", {POLICY_GRPO, KL_K3, true, false, 0.3, 0, 1}},
                  {"grpo k2", {POLICY_GRPO, KL_K2, false, false, 0.3, 0, 1}},
                  {"grpo k1 corrected", {POLICY_GRPO, KL_K1, true, false, 0.3, 0, 1}},
                  {"dapo k3, two passes", {POLICY_DAPO, KL_K3, true, false, 0.3, 0, 2}},
                  {"gspo k3", {POLICY_GSPO, KL_K3, true, false, 0.3, 0, 1}},
                  {"dr_grpo k3", {POLICY_DR_GRPO, KL_K3, true, false, 0.3, 0, 1}},
                  {"cispo k3", {POLICY_CISPO, KL_K3, true, false, 0.3, 0, 1}},
                  {"rloo, k1 in the reward", {POLICY_RLOO, KL_K1, false, true, 0.3, 0, 1}},
                  {"grpo, k1 in the reward", {POLICY_GRPO, KL_K1, false, true, 0.3, 0, 1}}};
    double pi[P][V], ref[P][V], best[V];
    for (size_t i = 0; i < sizeof method / sizeof *method; i++) {
        train(&method[i].how, pi, ref);
        for (int p = 0; p < P; p++) {
            for (int v = 0; v < V; v++) best[v] = ref[p][v] * exp(reward[p][v] / method[i].how.beta);
            normalise(best);
            assert_true(divergence(ref[p], best) > 0.1); /* the initial policy was far from the optimum */
            assert_optimum(method[i].name, pi[p], best, 0.004);
        }
    }
}

/* For every baseline: pi = ref exp(r / beta) / Z. */
static void every_algorithm(void **state) {
    (void)state;
    static const char *const name[] = {"ppo",   "a2c",         "reinforce",           "rloo",
                                       "remax", "reinforce++", "reinforce++-baseline"};
    double pi[P][V], ref[P][V], best[V];
    for (int algo = 0; algo < ALGOS; algo++) {
        train_algo((Algo)algo, 0.3, pi, ref);
        for (int p = 0; p < P; p++) {
            for (int v = 0; v < V; v++) best[v] = ref[p][v] * exp(reward[p][v] / 0.3);
            normalise(best);
            assert_optimum(name[algo], pi[p], best, 0.002);
        }
    }
}

/* Without the bias correction the gradient of k3 is that of the reverse divergence (kl.h), which has a different
 * optimum. */
static void reverse_kl(void **state) {
    (void)state;
    const Method how = {POLICY_GRPO, KL_K3, false, false, 0.3, 0, 1};
    double pi[P][V], ref[P][V], best[V], other[V];
    train(&how, pi, ref);
    for (int p = 0; p < P; p++) {
        reverse_optimum(ref[p], reward[p], how.beta, best);
        assert_optimum("grpo k3 without correction", pi[p], best, 0.01);
        for (int v = 0; v < V; v++) other[v] = ref[p][v] * exp(reward[p][v] / how.beta);
        normalise(other);
        assert_true(divergence(pi[p], other) > 0.02);
    }
}

static void entropy_bonus(void **state) {
    (void)state;
    const Method how = {POLICY_GRPO, KL_K3, true, false, 0, 0.3, 1};
    double pi[P][V], ref[P][V], best[V];
    train(&how, pi, ref);
    for (int p = 0; p < P; p++) {
        for (int v = 0; v < V; v++) best[v] = exp(reward[p][v] / how.entropy_coef);
        normalise(best);
        assert_optimum("entropy bonus", pi[p], best, 0.004);
    }
}

/* No KL penalty: the best answer takes all probability. */
static void no_restraint(void **state) {
    (void)state;
    const Method how = {POLICY_GRPO, KL_K3, true, false, 0, 0, 1};
    double pi[P][V], ref[P][V];
    train(&how, pi, ref);
    assert_true(pi[0][2] > 0.9 && pi[1][0] > 0.9);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(kl_to_the_reference), cmocka_unit_test(every_algorithm),
                                       cmocka_unit_test(reverse_kl), cmocka_unit_test(entropy_bonus),
                                       cmocka_unit_test(no_restraint)};
    return cmocka_run_group_tests_name("optimum", tests, models_setup, models_teardown);
}
