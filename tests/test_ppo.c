/* test_ppo.c - ./train_ppo: its losses against golden values (dev/golden/golden_ppo.py) and finite differences, and the
 * program as a user runs it: learning with each algorithm, the critic, the KL penalty, rewards from a model, metrics,
 * resuming, bad input.
 *
 * Needs all programs. Advantages are tested in test_gae.c, the exact optimum in test_optimum.c.
 *
 * The task has six prompts "a=" ... "f=". The model is fine-tuned to answer each with any of ten digits; one is
 * right. */
#include "../llmc/loss/aggregation.h" /* LossNormaliser, LossAggregation */
#include "../llmc/loss/kl.h"          /* KlEstimator */
#include "../llmc/loss/policy.h"      /* POLICY_BNPO, PolicyBatch, PolicyLossConfig, PolicyNormaliser, ... */
#include "../llmc/loss/ppo.h"         /* ppo_token, PpoConfig, ppo_value_token, PpoBatch, ... */
#include "files.h"                    /* files_path */
#include "golden.h"                   /* golden, Golden, golden_count, golden_floats, ... */
#include "models.h"                   /* assert_near, refused, models_setup, models_teardown */
#include "run.h"                      /* metric, sh, metric_mean, metric_lines, ... */
#include "shell.h"                    /* said, assert_holds, run */

/* ---- losses ---------------------------------------------------------------------------------------------------- */

static void assert_close(const Golden *g, const char *key, const float *x, int n) {
    const double *expected = golden(g, key);
    assert_int_equal(golden_count(g, key), n);
    for (int i = 0; i < n; i++)
        if (!(fabs(x[i] - expected[i]) <= 1e-6 * fmax(1, fabs(expected[i]))))
            fail_msg("%s: %s[%d] is %.9g, expected %.9g", g->name, key, i, x[i], expected[i]);
}

static void golden_loss(const Golden *g, bool cut) {
    int32_t offset[17];
    uint8_t counts[16];
    const int n = golden_offsets(g, "lengths", offset, 17, 64);
    const double *s = golden(g, "settings");
    for (int i = 0; i < n; i++) counts[i] = (uint8_t)golden(g, "counts")[i];
    const char *key[] = {"logp", "old_logp", "advantage", "entropy", "value", "old_value", "target", "ref_logp"};
    float *x[8], dlogp[64], dentropy[64], dvalue[64];
    for (int i = 0; i < 8; i++) x[i] = golden_floats(g, key[i]);
    const PpoConfig c = {.cliprange = s[0],
                         .cliprange_high = s[1],
                         .dual_clip = s[2],
                         .cliprange_value = s[3],
                         .entropy_coef = s[4],
                         .vf_coef = s[5],
                         .kl_coef = s[8],
                         .kl = (KlEstimator)s[9]};
    PpoStats stats = {0};
    const LossNormaliser N = ppo_normaliser((LossAggregation)s[6], s[7], offset, n, counts);
    double loss = 0;
    for (int first = 0; first < n;) { /* at once, and divided into micro-batches */
        const int next = cut ? (first + 2 < n ? first + 2 : n) : n;
        const PpoBatch b = {.completions = next - first,
                            .offset = offset + first,
                            .counts = counts + first,
                            .logp = x[0],
                            .old_logp = x[1],
                            .advantage = x[2],
                            .entropy = x[3],
                            .value = x[4],
                            .old_value = x[5],
                            .target = x[6],
                            .ref_logp = x[7]};
        loss += ppo_policy_loss(&c, &N, &b, dlogp, dentropy, &stats);
        loss += ppo_value_loss(&c, &N, &b, dvalue, &stats);
        first = next;
    }
    assert_close(g, "dlogp", dlogp, offset[n]);
    assert_close(g, "dentropy", dentropy, offset[n]);
    assert_close(g, "dvalue", dvalue, offset[n]);
    const double got[] = {loss,
                          stats.sum.policy_loss,
                          stats.sum.value_loss,
                          stats.sum.square_log / (2 * stats.sum.tokens),
                          stats.sum.clipped / stats.sum.tokens,
                          stats.sum.value_clipped / stats.sum.value_tokens,
                          stats.sum.ratio / stats.sum.tokens,
                          stats.sum.kl / stats.sum.tokens};
    const char *name[] = {"loss", "policy_loss", "value_loss", "approxkl", "clipfrac", "value_clipfrac", "ratio", "kl"};
    for (int i = 0; i < 8; i++)
        if (!(fabs(got[i] - golden(g, name[i])[0]) < 1e-6)) /* clipped values are counted only inside the mask */
            fail_msg("%s: %s is %.9g, expected %.9g", g->name, name[i], got[i], golden(g, name[i])[0]);
    for (int i = 0; i < 8; i++) free(x[i]);
}

static void losses_have_golden_values(void **state) {
    (void)state;
    Golden g;
    int seen = 0;
    FILE *f = golden_open("ppo.txt");
    for (; golden_next(f, &g); golden_free(&g))
        if (!strcmp(g.kind, "loss")) {
            golden_loss(&g, false);
            golden_loss(&g, true);
            seen++;
        }
    fclose(f);
    assert_int_equal(seen, 16);
}

/* Derivatives of a token's losses against differences in float64, with A and rho on either side of every clip. */
static void losses_have_their_gradients(void **state) {
    (void)state;
    const double h = 1e-6;
    bool unused;
    double d, none;
    for (int dual = 0; dual < 2; dual++)
        for (int plain = 0; plain < 2; plain++)
            for (double A = -1.5; A <= 1.5; A += 0.5)
                for (double log_ratio = -1.03; log_ratio < 1.6; log_ratio += 0.11) {
                    const PpoConfig c = {
                        .plain = plain, .cliprange = 0.2, .cliprange_high = 0.3, .dual_clip = 3 * dual};
                    ppo_token(&c, log_ratio, log_ratio - 2, A, &d, &unused);
                    const double up = ppo_token(&c, log_ratio + h, log_ratio - 2 + h, A, &none, &unused),
                                 down = ppo_token(&c, log_ratio - h, log_ratio - 2 - h, A, &none, &unused);
                    assert_near(d, (up - down) / (2 * h), 1e-6);
                }
    for (double V = -1.043; V < 1; V += 0.07)
        for (double G = -1; G <= 1; G += 0.5) {
            ppo_value_token(V, 0.1, G, 0.2, &d, &unused);
            const double up = ppo_value_token(V + h, 0.1, G, 0.2, &none, &unused),
                         down = ppo_value_token(V - h, 0.1, G, 0.2, &none, &unused);
            assert_near(d, (up - down) / (2 * h), 1e-6);
        }
}

static void known_losses(void **state) {
    (void)state;
    double d;
    bool clipped;
    const PpoConfig dual = {.cliprange = 0.2, .cliprange_high = 0.2, .dual_clip = 3};
    assert_near(ppo_token(&dual, log(5), -1, -1, &d, &clipped), 3, 1e-12); /* r = 5, A = -1, c = 3: objective -3 */
    assert_near(d, 0, 0);
    assert_near(ppo_token(&dual, log(2), -1, 1, &d, &clipped), -1.2, 1e-12);
    assert_true(clipped && d == 0);
    /* at ratio 1 the clipped loss has the gradient of the unclipped one: PPO with one pass is A2C */
    const PpoConfig plain = {.plain = true};
    double same;
    ppo_token(&dual, 0, -1, 0.7, &d, &clipped);
    ppo_token(&plain, 0, -1, 0.7, &same, &clipped);
    assert_near(d, same, 0);
    /* tokens of one answer with one advantage: the token mean of grpo's loss in TRL */
    const int32_t offset[] = {0, 3};
    const uint8_t counts[] = {1};
    const float logp[] = {-1, -2, -0.5f}, old[] = {-1.1f, -1.5f, -0.6f}, A[] = {0.5f, 0.5f, 0.5f};
    float mine[3], theirs[3];
    PpoStats s = {0};
    PpoConfig c = ppo_config();
    const PpoBatch b = {
        .completions = 1, .offset = offset, .counts = counts, .logp = logp, .old_logp = old, .advantage = A};
    const LossNormaliser three = {.tokens = 3, .completions = 1};
    const double loss = ppo_policy_loss(&c, &three, &b, mine, NULL, &s);
    PolicyLossConfig pc = policy_loss_config(POLICY_BNPO);
    const PolicyNormaliser N = policy_normaliser(offset, 1, counts, NULL);
    const PolicyBatch pb = {.completions = 1, .offset = offset, .advantage = A, .logp = logp, .old_logp = old};
    PolicyStats ps = policy_stats();
    assert_near(loss, policy_loss(&pc, &N, &pb, theirs, NULL, &ps), 1e-9);
    for (int i = 0; i < 3; i++) assert_near(mine[i], theirs[i], 1e-9);
}

/* ---- the program ----------------------------------------------------------------------------------------------- */

#define PPO_ON(shard)                                                                                                  \
    "./train_ppo -c $T/sft.bin -i $T/" shard " -g 4 --micro-tokens 512 --sample-count 0 --temperature 1 -p 12 "
#define PPO    PPO_ON("tasks.shard")
#define LONGER "-p 96 -l 0.005 --warmup-steps 20 --lr-scheduler-type constant --kl-coef 0.02 "

static int setup(void **state) {
    if (models_setup(state)) return 1;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    FILE *chat = fopen(files_path("chat.jsonl"), "w"), *tasks = fopen(files_path("tasks.jsonl"), "w");
    FILE *prefs = fopen(files_path("prefs.jsonl"), "w");
    for (int p = 0; p < 6; p++) {
        const int right = (3 * p + 1) % 10;
        for (int k = 0; k < 10; k++) {
            fprintf(chat, "{\"prompt\":\"%c=\",\"completion\":\"%d\"}\n", 'a' + p, k);
            if (k != right)
                fprintf(prefs, "{\"prompt\":\"%c=\",\"chosen\":\"%d\",\"rejected\":\"%d\"}\n", 'a' + p, right, k);
        }
        fprintf(tasks, "{\"prompt\":\"%c=\",\"answer\":\"%d\",\"task\":\"exact\"}\n", 'a' + p, right);
    }
    if (fclose(chat) | fclose(tasks) | fclose(prefs)) return 1;
    FILE *even = fopen(files_path("even.sh"), "w");
    fputs("while read -r l; do case $l in *'\"completion\":\"'[02468]*) echo 1;; *) echo 0;; esac; done\n", even);
    if (fclose(even)) return 1;
    sh("sed 's/\"answer\":\"[0-9]\"/\"answer\":\"7\"/' $T/tasks.jsonl > $T/sevens.jsonl");
    sh("for f in chat tasks sevens prefs; do data/make_shard --quiet -i $T/$f.jsonl -o $T/$f.shard || exit 1; done");
    sh("./train_sft --context 16 --micro-tokens 256 --batch-tokens 240 -i $T/chat.shard --layers 1 --width 32 "
       "--heads 2 -o $T/sft.bin -x 60 -l 0.02");
    sh("./train_rm --layers 1 --width 32 --heads 2 --context 16 -i $T/prefs.shard -o $T/rm.bin -x 200 -l 3e-3 "
       "--warmup-steps 20 --micro-tokens 512");
    return 0;
}

static void each_algorithm_learns(void **state) {
    (void)state;
    /* One answer in ten is right at the start. The progress of a single seed depends on rounding, so the test uses the
     * mean of three. */
    const char *algo[] = {"ppo", "a2c", "reinforce", "rloo", "remax", "reinforce++", "reinforce++-baseline"};
    for (int i = 0; i < 7; i++) {
        double start = 0, end = 0;
        for (int seed = 1; seed <= 3; seed++) {
            sh(PPO LONGER "-x %d --algo %s --seed %d %s -o $T/x.bin --metrics $T/m.jsonl", i ? 90 : 120, algo[i], seed,
               i == 3 || i == 6 ? "--warmup-steps 0 -p 24 -G 4"
               : i              ? "--warmup-steps 0"
                                : "");
            const int n = metric_lines("m.jsonl");
            start += metric("m.jsonl", 0, "objective/scores") / 3;
            end += metric_mean("m.jsonl", n - 5, n, "objective/scores") / 3;
        }
        if (!(start < 0.25 && end > 0.3)) fail_msg("%s: %g, then %g", algo[i], start, end);
    }
}

#define A2PO                                                                                                           \
    PPO "--algo a2po -l 0.005 --lr-scheduler-type constant --warmup-steps 0 -p 48 --beta2 0.1 --num-value-samples 64 "

/* A*-PO: V from samples of the initial policy, then a regression. Prompts whose samples are all wrong are left out. */
static void a2po_learns(void **state) {
    (void)state;
    double start = 0, end = 0;
    for (int seed = 1; seed <= 3; seed++) {
        sh(A2PO "-x 90 --seed %d -o $T/x.bin --metrics $T/m.jsonl", seed);
        start += metric("m.jsonl", 0, "objective/scores") / 3;
        end += metric_mean("m.jsonl", 85, 90, "objective/scores") / 3;
        assert_near(metric("m.jsonl", 3, "advantage"),
                    metric("m.jsonl", 3, "objective/scores") - metric("m.jsonl", 3, "v_star"), 1e-6);
        assert_near(metric("m.jsonl", 0, "implicit_reward"), 0, 1e-6);
        assert_near(metric("m.jsonl", 3, "loss/policy_avg"), metric("m.jsonl", 3, "loss"), 1e-6);
        assert_true(metric("m.jsonl", 89, "objective/kl") > 0.1);
    }
    if (!(end > start + 0.15)) fail_msg("%g, then %g", start, end);
    /* with a low temperature V is nearly 1 where a sample was right, with a high one it is the share of right ones */
    sh(A2PO "-x 1 --beta1 0.01 -o $T/x.bin --metrics $T/m.jsonl");
    assert_holds(said, "a2po    V of 6 prompts from 64 samples each");
    assert_near(metric("m.jsonl", 0, "v_star"), 0.98, 0.025); /* at least 1 - 0.01 log 64 */
    sh(A2PO "-x 1 --no-filter-all-incorrect -o $T/x.bin --metrics $T/m.jsonl");
    assert_holds(said, "; 0 prompts are left out");
    run(1, A2PO "-x 1 --reward verify:0 -o $T/x.bin");
    assert_holds(said, "none of 64 samples of the model of -c has a reward");
    refused(2, A2PO "-x 1 --kl-coef 0.1 -o $T/kept", "--kl-coef: --algo a2po has --beta2 instead");
    refused(2, A2PO "-x 1 --reference $T/sft.bin -o $T/kept", "--reference: the reference of --algo a2po");
    refused(2, A2PO "-x 1 --reward-model $T/rm.bin -o $T/kept",
            "--reward-model: --algo a2po takes rewards of verifiers");
    refused(2, PPO "-x 1 --beta2 0.1 -o $T/kept", "--beta2: used only by --algo a2po");
    refused(2, A2PO "-x 1 --reward judge=pair --judge $T/sft.bin -o $T/kept",
            "--algo a2po compares a completion with V, not with others");
    refused(2, A2PO "-x 1 --reward judge=group --judge $T/sft.bin -o $T/kept",
            "--algo a2po compares a completion with V, not with others");
    refused(1, A2PO "-x 1 --num-value-samples 4096 --slots 8 -o $T/kept",
            "--num-value-samples: 4096 completions of one prompt");
}

#define PRIME PPO "--algo prime -G 4 "
#define EVEN  PRIME "--reward-cmd 'sh $T/even.sh' -p 24 --lr-scheduler-type constant --warmup-steps 0 "

/* PRIME's process reward model (PRM), with an even digit as the right answer: a new one is the reference; it learns which
 * answers are right in steps that are its alone; its file starts the next one, and is a language model. */
static void the_process_reward_model(void **state) {
    (void)state;
    sh(EVEN "-x 40 -l 0.01 --prm-warmup 40 --prm-learning-rate 0.003 --beta-train 0.5 --prm-output $T/prm.bin "
            "-o $T/x.bin --metrics $T/m.jsonl");
    assert_true(weights_gap("x.bin", "sft.bin") == 0);
    assert_near(metric("m.jsonl", 0, "reward_model/dpo_loss"), log(2), 1e-6);
    assert_near(metric("m.jsonl", 0, "reward_model/dpo_acc_abs_before"), 0, 0);
    assert_near(metric("m.jsonl", 0, "reward_model/raw_reward"), 0, 1e-6);
    assert_true(metric("m.jsonl", 0, "reward_model/grad_norm") > 0);
    assert_false(has_metric("m.jsonl", 0, "reward_model/dpo_acc"));
    assert_true(metric_mean("m.jsonl", 35, 40, "reward_model/dpo_loss") < 0.4);
    assert_true(metric_mean("m.jsonl", 35, 40, "reward_model/dpo_acc_abs_before") > 0.95);
    assert_true(metric_mean("m.jsonl", 35, 40, "reward_model/dpo_acc_before") > 0.75);
    sh(EVEN "-x 1 -l 0 --prm $T/prm.bin --beta-train 0.5 -o $T/x.bin --metrics $T/n.jsonl");
    assert_true(metric("n.jsonl", 0, "reward_model/dpo_loss") < 0.4);
    sh("./train_ppo -c $T/prm.bin -i $T/tasks.shard -g 4 --algo rloo -G 2 -p 4 -x 1 -o $T/x.bin");
    /* before: a step on the generation orders its rewards */
    sh(EVEN "-x 1 -l 0 --prm-learning-rate 0.003 --prm-update before -o $T/x.bin --metrics $T/n.jsonl");
    assert_near(metric("n.jsonl", 0, "reward_model/dpo_acc_abs_before"), 0, 0);
    assert_true(metric("n.jsonl", 0, "reward_model/dpo_acc") > metric("n.jsonl", 0, "reward_model/dpo_acc_before"));
    assert_true(metric("n.jsonl", 0, "reward_model/raw_reward") != 0);
}

static void prime_learns(void **state) {
    (void)state;
    double start = 0, end = 0;
    for (int seed = 1; seed <= 3; seed++) {
        sh(EVEN "-x 30 -l 0.002 --prm-learning-rate 0.003 --seed %d -o $T/x.bin --metrics $T/m.jsonl", seed);
        start += metric("m.jsonl", 0, "objective/scores") / 3;
        end += metric_mean("m.jsonl", 25, 30, "objective/scores") / 3;
    }
    if (!(start < 0.65 && end > 0.85)) fail_msg("%g, then %g", start, end);
}

/* Without process rewards, PRIME's advantage is RLOO's, and so is the gradient if the losses of tokens are summed. Filters that
 * keep everything and nothing; outcomes that are missing and outcomes out of range. */
static void prime_without_process_rewards(void **state) {
    (void)state;
    sh(PRIME "-x 1 -l 1e-3 --reward-dpo-coef 0 --reward-gt-coef 1 --whiten-advantages no --loss-agg-mode "
             "seq-mean-token-sum -o $T/a.bin --metrics $T/m.jsonl");
    sh(PPO "-x 1 -l 1e-3 --algo rloo -G 4 --kl-coef 0 -o $T/b.bin --metrics $T/n.jsonl");
    assert_near(metric("m.jsonl", 0, "grad_norm"), metric("n.jsonl", 0, "grad_norm"),
                1e-5 * metric("n.jsonl", 0, "grad_norm"));
    assert_true(metric("m.jsonl", 0, "grad_norm") > 0);
    sh(PRIME "-x 2 -l 1e-3 -o $T/a.bin");
    sh(PRIME "-x 2 -l 1e-3 --filter-accuracy --accuracy-lower-bound 0 --accuracy-upper-bound 1 -o $T/b.bin --metrics "
             "$T/m.jsonl");
    assert_true(weights_gap("a.bin", "b.bin") == 0);
    assert_near(metric("m.jsonl", 0, "filter_accuracy/kept"), 1, 0);
    sh(PRIME "-x 2 -l 1e-3 --filter-accuracy --accuracy-lower-bound 0.9 --accuracy-upper-bound 0.95 -o $T/b.bin "
             "--prm-output $T/prm.bin --metrics $T/m.jsonl");
    assert_holds(said, "no prompt has a mean outcome from 0.9 to 0.95");
    assert_near(metric("m.jsonl", -1, "num_trained_tokens"), 0, 0);
    assert_true(weights_gap("prm.bin", "sft.bin") == 0);
    sh(PRIME "-x 2 -l 1e-3 --filter-accuracy --accuracy-lower-bound 0.25 --accuracy-upper-bound 0.75 -p 48 -o $T/b.bin "
             "--metrics $T/m.jsonl");
    const double kept = metric("m.jsonl", 0, "filter_accuracy/kept");
    assert_true(kept > 0 && kept < 1);
    /* of every second completion the outcome is not known */
    sh(PRIME
       "-x 2 --reward-cmd 'n=0; while read -r l; do n=$((n+1)); case $((n%%4)) in 1) echo 1;; 3) echo 0;; *) echo "
       "null;; esac; done' -o $T/b.bin --metrics $T/m.jsonl");
    assert_near(metric("m.jsonl", 0, "objective/scores"), 0.5, 1e-9);
    assert_near(metric("m.jsonl", 0, "reward_model/dpo_loss"), log(2), 1e-6);
    assert_true(isfinite(metric("m.jsonl", 1, "loss")) && metric("m.jsonl", 1, "grad_norm") > 0);
    run(1, PRIME "-x 2 --reward verify:2 -o $T/x.bin");
    assert_holds(said, "a completion has the score 2, and an outcome is from 0");
}

static void identities(void **state) {
    (void)state;
    /* one pass of PPO is A2C, whose loss has no ratio */
    sh(PPO "-x 4 -l 1e-3 --algo a2c -o $T/a.bin");
    sh(PPO "-x 4 -l 1e-3 --algo ppo --num-ppo-epochs 1 --lam 1 --whiten-advantages no -o $T/b.bin");
    assert_true(weights_gap("a.bin", "b.bin") == 0);
    /* no value loss, lambda 1: the head stays 0, so the advantage is the return */
    sh(PPO "-x 4 -l 1e-3 --algo a2c --vf-coef 0 --whiten-advantages yes -o $T/a.bin");
    sh(PPO "-x 4 -l 1e-3 --algo reinforce++ -o $T/b.bin");
    assert_true(weights_gap("a.bin", "b.bin") < 1e-6);
    /* a separate critic that does not train has no effect */
    sh(PPO "-x 4 -l 1e-3 --critic $T/sft.bin --vf-coef 0 --metrics $T/m.jsonl -o $T/a.bin");
    sh(PPO "-x 4 -l 1e-3 --vf-coef 0 -o $T/b.bin");
    assert_near(metric("m.jsonl", 0, "critic/values/mean"), 0, 0);
}

static void results_do_not_depend_on_memory_options(void **state) {
    (void)state;
    const char *how[] = {"", "--micro-tokens 16", "--micro-tokens 2k", "--recompute 2 --micro-tokens 40",
                         "--activation-cache 0"},
               *more[] = {"--entropy-coef 0.01 --critic $T/rm.bin", "--algo rloo -G 4 --num-mini-batches 2",
                          "--algo prime -G 4 --num-mini-batches 2 --prm-learning-rate 1e-3 --beta-train 1", ""};
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 5; i++) {
            sh(PPO "-x 4 -l 1e-3 --adam-epsilon 1e-3 %s %s -o $T/m%d.bin --metrics $T/m%d.jsonl", more[k], how[i], i,
               i);
            if (!i) continue;
            char name[20];
            snprintf(name, sizeof name, "m%d.jsonl", i);
            assert_near(metric(name, -1, "loss"), metric("m0.jsonl", -1, "loss"), 1e-5);
            assert_near(metric(name, -1, "val/ratio_var"), metric("m0.jsonl", -1, "val/ratio_var"), 1e-5);
            snprintf(name, sizeof name, "m%d.bin", i);
            /* other orders of float32 sums; 2e-4 is a fifth of one step, for gradients that are almost 0 */
            assert_true(weights_gap("m0.bin", name) < 2e-4);
        }
}

static void what_is_logged(void **state) {
    (void)state;
    sh(PPO "-j $T/tasks.shard --eval-steps 1 -x 8 -l 1e-3 -o $T/x.bin --metrics $T/m.jsonl --report $T/r.html "
           "--gold-reward exact --kl-estimator k3");
    assert_int_equal(metric_lines("m.jsonl"), 2); /* one per generation of four steps */
    const char *keys[] = {"objective/scores",
                          "objective/kl",
                          "objective/entropy",
                          "objective/non_score_reward",
                          "objective/gold",
                          "loss/policy_avg",
                          "policy/clipfrac_avg",
                          "objective/rlhf_reward",
                          "loss/value_avg",
                          "val/clipfrac_avg",
                          "policy/approxkl_avg",
                          "policy/entropy_avg",
                          "val/ratio",
                          "val/ratio_var",
                          "val/num_eos_tokens",
                          "critic/vf_explained_var",
                          "episode",
                          "eps",
                          "learning_rate",
                          "completions/mean_length",
                          "eval_accuracy",
                          "rewards/verify/mean"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!has_metric("m.jsonl", -1, keys[i])) fail_msg("no %s", keys[i]);
    /* before the first update the policy equals the reference and the old policy, and a new head returns 0 */
    assert_near(metric("m.jsonl", 0, "objective/kl"), 0, 1e-9);
    assert_near(metric("m.jsonl", 0, "critic/values/mean"), 0, 0);
    assert_near(metric("m.jsonl", 0, "episode"), 12, 0);
    assert_near(metric("m.jsonl", 0, "val/num_eos_tokens"),
                12 * (1 - metric("m.jsonl", 0, "completions/clipped_ratio")), 1e-9);
    for (int i = 0; i < 2; i++) {
        assert_near(metric("m.jsonl", i, "objective/gold"), metric("m.jsonl", i, "objective/scores"), 1e-9);
        assert_near(metric("m.jsonl", i, "objective/rlhf_reward"),
                    metric("m.jsonl", i, "objective/scores") + metric("m.jsonl", i, "objective/non_score_reward"),
                    1e-9);
        assert_near(metric("m.jsonl", i, "objective/non_score_reward"), -0.05 * metric("m.jsonl", i, "objective/kl"),
                    1e-9);
    }
    assert_true(metric("m.jsonl", 1, "objective/kl") > 0);
    sh("grep -q 'Proxy and gold' $T/r.html && grep -q '</html>' $T/r.html");
}

static void the_critic(void **state) {
    (void)state;
    /* it learns the expected reward of a policy that does not change: after a 7 the answer is right. Half of the
     * variance is that of the digit, which no critic can predict */
    sh(PPO_ON("sevens.shard") LONGER
       "-x 120 --critic $T/sft.bin --critic-warmup 120 --critic-learning-rate 0.004 --critic-output $T/critic.bin "
       "--lam-critic 1 -o $T/x.bin --metrics $T/m.jsonl");
    assert_true(weights_gap("x.bin", "sft.bin") == 0); /* the policy does not change */
    assert_true(metric_mean("m.jsonl", 25, 30, "critic/vf_explained_var") > 0.3);
    assert_true(metric_mean("m.jsonl", 25, 30, "loss/value_avg") < 0.7 * metric("m.jsonl", 0, "loss/value_avg"));
    assert_false(has_metric("m.jsonl", 0, "policy/approxkl_avg"));
    /* the next run's critic starts from the file */
    sh(PPO_ON("sevens.shard") LONGER "-x 4 --critic $T/critic.bin --lam-critic 1 -o $T/x.bin --metrics $T/n.jsonl");
    assert_true(metric("n.jsonl", 0, "critic/vf_explained_var") > 0.25);
    /* a critic from a reward model starts with its normalised scores, not with 0 */
    sh(PPO "-x 4 --critic $T/rm.bin -o $T/x.bin --metrics $T/n.jsonl");
    assert_true(fabs(metric("n.jsonl", 0, "critic/values/mean")) > 1e-3);
}

static void the_leash(void **state) {
    (void)state;
    sh(PPO LONGER "-x 60 --kl-coef 1 -o $T/x.bin --metrics $T/tight.jsonl");
    sh(PPO LONGER "-x 60 --kl-coef 0.001 -o $T/x.bin --metrics $T/loose.jsonl");
    const double tight = metric_mean("tight.jsonl", 10, 15, "objective/kl"),
                 loose = metric_mean("loose.jsonl", 10, 15, "objective/kl");
    if (!(tight < 0.25 * loose)) fail_msg("KL %g with a large coefficient, %g with a small one", tight, loose);
    /* adaptive: beta rises while the KL is above its target, per update by at most a fifth of n / horizon */
    sh(PPO LONGER "-x 40 --kl-controller adaptive --kl-target 0.01 --kl-horizon 200 -o $T/x.bin --metrics $T/m.jsonl");
    assert_near(metric("m.jsonl", 1, "objective/kl_coef"), 0.02 * (1 - 0.2 * 96 / 200), 1e-9); /* KL 0 at first */
    const double before = metric("m.jsonl", 8, "objective/kl_coef"), after = metric("m.jsonl", 9, "objective/kl_coef");
    assert_near(after / before, 1 + 0.2 * 96 / 200, 1e-9);
    /* a KL target for the step ends the passes early */
    sh(PPO LONGER "-x 40 --num-ppo-epochs 10 --target-kl 1e-4 -o $T/x.bin --metrics $T/m.jsonl");
    assert_true(metric_lines("m.jsonl") > 4);
    /* without a KL penalty no reference is loaded and no KL is logged */
    sh(PPO "-x 4 --kl-coef 0 -o $T/x.bin --metrics $T/m.jsonl");
    assert_false(has_metric("m.jsonl", 0, "objective/kl"));
}

static void rewards_of_every_kind(void **state) {
    (void)state;
    /* a reward model alone: its scores rise */
    sh(PPO LONGER "-x 120 --reward-model $T/rm.bin --gold-reward verify -o $T/x.bin --metrics $T/m.jsonl");
    const int n = metric_lines("m.jsonl");
    assert_false(has_metric("m.jsonl", 0, "rewards/verify/mean"));
    assert_true(metric("m.jsonl", n - 1, "objective/scores") > metric("m.jsonl", 0, "objective/scores") + 0.3);
    assert_true(metric_mean("m.jsonl", n - 3, n, "objective/gold") >= 0);
    assert_holds(said, "gold reward R(d) =");
    /* the same through a sum: scores add those of the model and of the verifier */
    sh(PPO "-x 4 --reward-model $T/rm.bin -o $T/x.bin --metrics $T/a.jsonl");
    sh(PPO "-x 4 --reward-model $T/rm.bin --reward verify:2 -o $T/x.bin --metrics $T/b.jsonl");
    sh(PPO "-x 4 --gold $T/rm.bin --gold-cmd 'while read -r l; do echo 3; done' -o $T/x.bin --metrics $T/c.jsonl");
    const double model = metric("a.jsonl", 0, "objective/scores"), right = metric("c.jsonl", 0, "objective/scores");
    assert_near(metric("b.jsonl", 0, "objective/scores"), model + 2 * right, 1e-6);
    assert_near(metric("c.jsonl", 0, "objective/gold"), model + 3, 1e-6);
    /* clipped scores; unfinished answers get the penalty */
    sh(PPO "-x 4 --reward-model $T/rm.bin --reward-clip 0.001 -o $T/x.bin --metrics $T/a.jsonl");
    assert_true(fabs(metric("a.jsonl", 0, "objective/scores")) <= 0.00101);
    sh(PPO "-x 4 -g 1 --missing-eos-penalty 5 -o $T/x.bin --metrics $T/a.jsonl");
    assert_near(metric("a.jsonl", 0, "objective/scores"), metric("a.jsonl", 0, "rewards/verify/mean") - 5, 1e-6);
    sh(PPO "-x 4 -g 1 --non-eos-penalty -o $T/x.bin --metrics $T/a.jsonl");
    assert_near(metric("a.jsonl", 0, "objective/scores"), -1, 1e-6);
}

/* What configuration and lineage say of --whiten-advantages is what the run did. */
static void whitening_is_named(void **state) {
    (void)state;
    const char *how[][2] = {{"--algo ppo", "yes"},
                            {"--algo reinforce", "no"},
                            {"--algo ppo --whiten-advantages no", "no"},
                            {"--algo a2c --whiten-advantages yes", "yes"}};
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        char want[64];
        sh(PPO "-x %d %s -o $T/x.bin --report $T/r.html", i == 0 || i == 2 ? 4 : 1, how[i][0]);
        snprintf(want, sizeof want, "whiten-advantages[^a-z]*%s", how[i][1]);
        sh("data/show $T/x.bin | grep -q '%s'", want);
        sh("grep -o 'whiten-advantages.\\{0,40\\}' $T/r.html | grep -q '>%s<'", how[i][1]);
    }
}

/* KL in the loss: 0 at the start, and it holds the policy back. Aggregations of one-completion groups. */
static void kl_in_the_loss(void **state) {
    (void)state;
    const char *algo[] = {"ppo", "rloo -G 4"};
    for (int a = 0; a < 2; a++) {
        double kl[2];
        for (int i = 0; i < 2; i++) {
            sh(PPO LONGER "-x 60 --algo %s --kl-coef 0 --use-kl-loss --kl-loss-coef %s --kl-loss-type k2 -o $T/x.bin "
                          "--metrics $T/m.jsonl",
               algo[a], i ? "5" : "1e-4");
            const int n = metric_lines("m.jsonl");
            kl[i] = metric_mean("m.jsonl", n - 4, n, "loss/kl_avg");
            assert_true(metric("m.jsonl", 0, "loss/kl_avg") < kl[0]);
        }
        if (!(kl[1] < 0.25 * kl[0]))
            fail_msg("%s: KL %g with a large weight, %g with a small one", algo[a], kl[1], kl[0]);
    }
    sh(PPO "-x 1 -l 1e-3 --num-ppo-epochs 1 -o $T/a.bin --metrics $T/m.jsonl --use-kl-loss");
    assert_near(metric("m.jsonl", 0, "loss/kl_avg"), 0, 1e-9); /* the policy is the reference */
    /* on completions of one token all aggregations agree; a sum is the maximum length times that divided by it */
    const char *mode[] = {"token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"};
    double norm[4];
    for (int i = 0; i < 4; i++) {
        sh(PPO "-x 1 -g 1 -l 0 --num-ppo-epochs 1 --max-grad-norm 0 --loss-agg-mode %s -o $T/x.bin "
               "--metrics $T/m.jsonl",
           mode[i]);
        norm[i] = metric("m.jsonl", 0, "grad_norm");
        assert_near(norm[i], norm[0], 1e-6 * norm[0]); /* one token per completion, and a constant of 1 */
    }
    sh(PPO "-x 1 -g 4 -l 0 --num-ppo-epochs 1 --max-grad-norm 0 --loss-agg-mode seq-mean-token-sum -o $T/x.bin "
           "--metrics $T/a.jsonl");
    sh(PPO "-x 1 -g 4 -l 0 --num-ppo-epochs 1 --max-grad-norm 0 --loss-agg-mode seq-mean-token-sum-norm -o $T/x.bin "
           "--metrics $T/b.jsonl");
    assert_near(metric("a.jsonl", 0, "grad_norm"), 4 * metric("b.jsonl", 0, "grad_norm"),
                1e-5 * metric("a.jsonl", 0, "grad_norm"));
    refused(2, PPO "-o $T/kept -x 1 --use-kl-loss --kl-loss-type k1", "gradient is 0 in expectation");
    refused(2, PPO "-o $T/kept -x 1 --kl-loss-coef 0.1", "used only with --use-kl-loss");
    refused(2, PPO "-o $T/kept -x 1 --algo rloo -G 2 --loss-agg-mode seq-mean-token-sum", "--loss-agg-mode");
}

static void pretraining_text(void **state) {
    (void)state;
    sh("data/make_shard --quiet -i $T/chat.jsonl --format tokens -o $T/text.bin || true");
    /* an llm.c token shard written by hand: 400 tokens, "a=7" repeated */
    FILE *f = fopen(files_path("text.bin"), "w");
    int32_t header[256] = {20240520, 1, 400};
    fwrite(header, sizeof header, 1, f);
    for (int i = 0; i < 400; i++) {
        const uint16_t token = (uint16_t) "a=7"[i % 3];
        fwrite(&token, sizeof token, 1, f);
    }
    assert_int_equal(fclose(f), 0);
    sh(PPO "-x 80 -l 0.005 --ptx $T/text.bin --ptx-coef 1 --ptx-tokens 100 -o $T/x.bin --metrics $T/m.jsonl");
    assert_true(metric("m.jsonl", 0, "loss/ptx") > 3);
    assert_true(metric("m.jsonl", -1, "loss/ptx") < 0.2 * metric("m.jsonl", 0, "loss/ptx"));
}

/* ---- resuming -------------------------------------------------------------------------------------------------- */

static void resumes(const char *more, int steps, int stop) {
    char text[1200];
    sh(PPO "-l 1e-3 -x %d %s -o $T/whole.bin --metrics $T/whole.jsonl", steps, more);
    unlink(files_path("parts.jsonl")), unlink(files_path("parts.bin"));
    for (int part = 0; part < 2; part++) {
        snprintf(text, sizeof text, PPO "-l 1e-3 -x %d %s -o $T/parts.bin --metrics $T/parts.jsonl %s", steps, more,
                 part ? "--resume $T/parts.bin.state" : "");
        const pid_t pid = run_start(text);
        if (!part) {
            run_until(files_path("parts.jsonl"), stop);
            kill(pid, SIGTERM);
        }
        const int rc = run_wait(pid, 120);
        if (rc) fail_msg("%s: status %d: %s", text, rc, strlen(said) > 300 ? said + strlen(said) - 300 : said);
        if (!part) assert_holds(said, "stopped by a signal after step");
    }
    assert_same_file("whole.bin", "parts.bin");
    const char *keys[] = {"loss", "objective/kl", "objective/scores", "episode", "val/ratio"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        assert_near(metric("parts.jsonl", -1, keys[i]), metric("whole.jsonl", -1, keys[i]), 0);
}

static void resumes_bit_for_bit(void **state) {
    (void)state;
    resumes("--kl-controller adaptive --kl-target 0.5 --kl-horizon 500 --target-kl 0.001 --weight-decay 0.1", 1200, 3);
    resumes("--critic $T/sft.bin --critic-warmup 40 --critic-output $T/critic.bin --num-mini-batches 2 "
            "--whiten-rewards --entropy-coef 0.01 --reward-model $T/rm.bin --gold $T/rm.bin",
            400, 3);
    sh("cp $T/critic.bin $T/critic_parts.bin");
    sh(PPO "-l 1e-3 -x 400 --critic $T/sft.bin --critic-warmup 40 --critic-output $T/critic.bin --num-mini-batches 2 "
           "--whiten-rewards --entropy-coef 0.01 --reward-model $T/rm.bin --gold $T/rm.bin -o $T/whole.bin");
    assert_same_file("critic.bin", "critic_parts.bin");
    resumes("--algo remax --ptx $T/text.bin --ptx-coef 0.1 --ptx-tokens 50", 500, 3);
    resumes("--algo a2po --beta2 0.1 --num-value-samples 64", 1500, 3);
#define PRM                                                                                                            \
    "--algo prime -G 4 --num-mini-batches 2 --num-ppo-epochs 2 --prm-update before --prm-learning-rate 1e-3 "          \
    "--prm-output $T/prm.bin "
    resumes(PRM, 400, 3);
    sh("cp $T/prm.bin $T/prm_parts.bin");
    sh(PPO "-l 1e-3 -x 400 " PRM "-o $T/whole.bin");
    assert_same_file("prm.bin", "prm_parts.bin");
    sh(PPO PRM "-x 8 -o $T/a.bin --save-steps 4 --state $T/a.state && test -f $T/a.state.prm-8");
    sh("cp $T/sft.bin $T/a.state.prm-8");
    refused(1, PPO PRM "-x 12 -o $T/kept --resume $T/a.state", "it is not the prm of the state at step 8");
    /* each periodic state replaces the last one and its critic */
    sh("rm -f $T/*.critic-*");
    sh(PPO "-x 40 -l 1e-3 --critic $T/sft.bin --save-steps 8 -o $T/a.bin --state $T/a.state");
    sh("test $(ls $T/a.state.critic-* | wc -l) = 1 && test -f $T/a.state.critic-40");
    sh(PPO "-x 60 -l 1e-3 --critic $T/sft.bin --save-steps 20 -o $T/a.bin --resume $T/a.state --state $T/a.state");
    /* a run that continues from a state and writes another one leaves the first one whole */
    sh(PPO "-x 70 -l 1e-3 --critic $T/sft.bin --save-steps 10 -o $T/a2.bin --resume $T/a.state --state $T/a2.state");
    sh("test -f $T/a.state.critic-60 && test -f $T/a2.state.critic-70");
    sh("mv $T/a.state.critic-60 $T/b");
    refused(1, PPO "-x 80 -l 1e-3 --critic $T/sft.bin -o $T/kept --resume $T/a.state", "a.state.critic-60");
    sh("cp $T/sft.bin $T/a.state.critic-60");
    refused(1, PPO "-x 80 -l 1e-3 --critic $T/sft.bin -o $T/kept --resume $T/a.state",
            "it is not the critic of the state at step 60");
}

/* ---- bad input ------------------------------------------------------------------------------------------------- */

static void bad_input(void **state) {
    (void)state;
    refused(2, PPO "-o $T/kept --algo a2c --num-ppo-epochs 2", "has no importance ratio");
    refused(2, PPO "-o $T/kept --algo rloo -G 1", "at least 2");
    refused(2, PPO "-o $T/kept --algo rloo --critic $T/sft.bin", "--critic: used only by --algo ppo and a2c");
    refused(2, PPO "-o $T/kept --critic-warmup 3", "--critic-warmup: used only with --critic");
    refused(2, PPO "-o $T/kept --prm $T/sft.bin", "--prm: used only by --algo prime");
    refused(2, PPO "-o $T/kept --algo rloo -G 2 --filter-accuracy", "--filter-accuracy: used only by --algo prime");
    refused(2, PRIME "-o $T/kept --accuracy-upper-bound 0.9",
            "--accuracy-upper-bound: used only with --filter-accuracy");
    refused(2, PRIME "-o $T/kept --filter-accuracy --accuracy-upper-bound 0.1", "is above --accuracy-upper-bound, 0.1");
    refused(2, PRIME "-o $T/kept --reward-dpo-coef 0 --reward-gt-coef 0", "there is nothing to learn");
    refused(2, PRIME "-o $T/kept --kl-coef 0.1", "--kl-coef: --algo prime has no KL penalty in the reward");
    refused(2, PRIME "-o $T/kept --reward-model $T/rm.bin", "--reward-model: --algo prime learns from outcomes");
    refused(2, PRIME "-o $T/kept --critic $T/sft.bin", "--critic: used only by --algo ppo and a2c");
    refused(2, PRIME "-o $T/kept --prm-output $T/kept", "--prm-output and --output: both are");
    refused(2, PPO "-o $T/kept --algo prime -G 1", "at least 2");
    refused(1, PRIME "-o $T/kept --prm $T/rm.bin", "it is a reward model, expected a language model");
    refused(1, PRIME "-o $T/kept --prm $T/none.bin", "none.bin");
    refused(2, PPO "-o $T/kept --num-mini-batches 5", "does not divide the 12 prompts");
    refused(2, PPO "-o $T/kept --kl-controller adaptive --kl-coef 0", "--kl-coef is 0");
    refused(2, PPO "-o $T/kept --ptx-coef 1", "require each other");
    refused(2, PPO "-o $T/kept --gold-reward nonsense", "--gold-reward, --gold-cmd: reward 'nonsense'");
    refused(2, PPO "-o $T/kept --lam 1.5", "--lam");
    refused(2, PPO "-o $T/kept -p 1", "at least two completions");
    refused(2, "./train_ppo -c $T/sft.bin -o $T/kept", "-i/--input");
    refused(1, PPO "-o $T/kept --reward-model $T/sft.bin", "not a reward model");
    refused(1, PPO "-o $T/kept --gold $T/sft.bin", "not a reward model");
    refused(1, PPO "-o $T/kept --reward-model $T/none.bin", "none.bin");
    refused(1, PPO_ON("chat.shard") "-o $T/kept", "a shard of kind chat, expected prompt");
    refused(1, PPO "-o $T/kept --ptx $T/chat.shard --ptx-coef 1", "chat.shard");
    sh("./train_sft -i $T/chat.shard --context 3 --micro-tokens 256 --batch-tokens 240 --layers 1 --width 32 "
       "--heads 2 -o $T/short.bin -x 1");
    refused(1, PRIME "-o $T/kept --prm $T/short.bin", "is shorter than the longest prompt with its completion");
    refused(1, PPO "-o $T/kept --critic $T/short.bin", "is shorter than the longest prompt with its completion");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(losses_have_golden_values),
                                       cmocka_unit_test(losses_have_their_gradients),
                                       cmocka_unit_test(known_losses),
                                       cmocka_unit_test(each_algorithm_learns),
                                       cmocka_unit_test(a2po_learns),
                                       cmocka_unit_test(the_process_reward_model),
                                       cmocka_unit_test(prime_learns),
                                       cmocka_unit_test(prime_without_process_rewards),
                                       cmocka_unit_test(identities),
                                       cmocka_unit_test(results_do_not_depend_on_memory_options),
                                       cmocka_unit_test(what_is_logged),
                                       cmocka_unit_test(the_critic),
                                       cmocka_unit_test(the_leash),
                                       cmocka_unit_test(rewards_of_every_kind),
                                       cmocka_unit_test(whitening_is_named),
                                       cmocka_unit_test(kl_in_the_loss),
                                       cmocka_unit_test(pretraining_text),
                                       cmocka_unit_test(resumes_bit_for_bit),
                                       cmocka_unit_test(bad_input)};
    return cmocka_run_group_tests_name("ppo", tests, setup, models_teardown);
}
