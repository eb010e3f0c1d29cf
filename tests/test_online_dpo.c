/* test_online_dpo.c - online preference learning: sampling from the mixture of two models against its definition in
 * double, and ./train_dpo --online with each way of drawing and judging pairs, resumed runs, bad input.
 *
 * Needs train_sft, train_rm, train_dpo, data/make_shard and data/make_prefs. */
#include "../llmc/base/error.h"      /* Error */
#include "../llmc/model/model.h"     /* model_free, Model */
#include "../llmc/rollout/mixture.h" /* Mixture, mixture_free, mixture_new, mixture_refresh */
#include "../llmc/rollout/rollout.h" /* Completion, RolloutRequest, Rollout, Sampling, ... */
#include "dpo.h"                     /* DPO, RULE, SHARD, dpo_setup */
#include "files.h"                   /* files_path */
#include "models.h"                  /* refused, assert_near, MODELS_VOCAB, models_logits, ... */
#include "run.h"                     /* sh, metric, metric_mean, assert_same_file, ... */
#include "shell.h"                   /* assert_holds, said, run */

#define JUDGE "--reward-cmd 'data/make_prefs --score --rule char=a' "
#define ONLINE                                                                                                         \
    "./train_dpo -c $T/sft.bin -i $T/prompts.shard --online --per-device-train-batch-size 16 -l 2e-3 "                 \
    "-g 6 --sample-count 0 "

static int setup(void **state) {
    if (dpo_setup(state)) return 1;
    sh(RULE "--count 64 --format prompt" SHARD "$T/prompts.shard");
    sh("./train_rm -c $T/sft.bin -i $T/prefs.shard -o $T/rm.bin --per-device-train-batch-size 16 -x 40 -l 3e-3");
    return 0;
}

/* ---- the mixture ----------------------------------------------------------------------------------------------- */

/* log of softmax(((1 - c) z_p + c z_r) / temperature)[target]. The two logits may have any normaliser. */
static double mixed(const float *p, const float *r, double c, double temperature, int target) {
    double top = -INFINITY, sum = 0;
    for (int v = 0; v < MODELS_VOCAB; v++) top = fmax(top, ((1 - c) * p[v] + c * r[v]) / temperature);
    for (int v = 0; v < MODELS_VOCAB; v++) sum += exp(((1 - c) * p[v] + c * r[v]) / temperature - top);
    return ((1 - c) * p[target] + c * r[target]) / temperature - top - log(sum);
}

static void the_mixture_is_what_it_is_said_to_be(void **state) {
    (void)state;
    enum { CONTEXT = 24, SLOTS = 3, REQUESTS = 4, SAMPLES = 2, NEW = 9 };
    Error e;
    Model policy = models_random(CONTEXT), reference = models_new(1, 48, CONTEXT + 8); /* a different shape */
    Rollout engine;
    Mixture m;
    if (!rollout_new(&engine, &policy, SLOTS, 6, NEW, &e)) fail_msg("%s", e.text);
    if (!mixture_new(&m, &engine, &reference, 0.3, &e)) fail_msg("%s", e.text);
    const double coefs[] = {0.3, 0, 1, 0.75};
    for (int k = 0; k < 4; k++) {
        m.coef = coefs[k];
        mixture_refresh(&m);
        const int32_t prompts[REQUESTS][6] = {{65, 66, 67, 68, 69, 70}, {97}, {98, 99}, {65, 66, 67, 68, 69, 70}};
        const int lengths[REQUESTS] = {6, 1, 2, 4};
        Completion out[REQUESTS][SAMPLES];
        RolloutRequest q[REQUESTS];
        Sampling how = sampling_default();
        how.max_new = NEW;
        how.seed = 5 + (uint64_t)k;
        how.temperature = k == 3 ? 0.7f : 1;
        for (int i = 0; i < REQUESTS; i++)
            q[i] = (RolloutRequest){.prompt = prompts[i],
                                    .prompt_len = lengths[i],
                                    .samples = i == 1 ? 1 : SAMPLES,
                                    .id = (uint64_t)i * SAMPLES,
                                    .out = out[i]};
        if (!rollout_run(&engine, &how, q, REQUESTS, NULL, NULL, &e)) fail_msg("%s", e.text);
        for (int i = 0; i < REQUESTS; i++)
            for (int s = 0; s < q[i].samples; s++) {
                const Completion *c = &out[i][s];
                int32_t ids[CONTEXT];
                memcpy(ids, prompts[i], (size_t)lengths[i] * sizeof *ids);
                memcpy(ids + lengths[i], c->tokens, (size_t)c->count * sizeof *ids);
                assert_int_equal(c->count, NEW);
                float *p = models_logits(&policy, ids, lengths[i] + NEW);
                float *r = models_logits(&reference, ids, lengths[i] + NEW);
                for (int t = 0; t < NEW; t++) {
                    const int at = (lengths[i] + t - 1) * MODELS_VOCAB;
                    /* a mixture adds two float32 logits of order 10, each off by about 1e-5 through the layers */
                    assert_near(c->logp[t], mixed(p + at, r + at, coefs[k], how.temperature, c->tokens[t]), 2e-4);
                }
                free(p), free(r);
                completion_free(&out[i][s]);
            }
    }
    mixture_free(&m), rollout_free(&engine);
    model_free(&policy), model_free(&reference);
}

/* ---- learning -------------------------------------------------------------------------------------------------- */

/* Checks that the mean score of the last ten steps exceeds that of the first five by at least this much. */
static void rises(const char *options, double much) {
    sh(ONLINE "-x 30 -o $T/a.bin --metrics $T/m.jsonl %s", options);
    const double before = metric_mean("m.jsonl", 0, 5, "objective/scores"),
                 after = metric_mean("m.jsonl", 20, 30, "objective/scores");
    if (!(after > before + much)) fail_msg("%s: score %.3f, then %.3f", options, before, after);
    unlink(files_path("m.jsonl"));
}

static void each_way_raises_the_score(void **state) {
    (void)state;
    rises(JUDGE, 1);
    rises(JUDGE "--loss-type ipo_sum --drop-ties --no-prefix-sharing", 0.7);
    rises("--reward-model $T/rm.bin --missing-eos-penalty 0.5", 0.5);
    rises(JUDGE "--online-loss xpo --xpo-alpha 0.001", 0.4);
    rises(JUDGE "--online-loss nash_md --mixture-coef 0.25", 0.7);
    rises(JUDGE "--loss-type sigmoid,sft --sync-ref-model --ref-model-sync-steps 10", 0.7);
}

/* In the first step the pairs come from the reference's own weights, so losses and divergences are known. */
static void the_start_is_known(void **state) {
    (void)state;
    sh(ONLINE JUDGE "-x 1 -o $T/a.bin --metrics $T/m.jsonl");
    assert_near(metric("m.jsonl", 0, "loss"), 0.693147181, 1e-6);
    assert_near(metric("m.jsonl", 0, "objective/kl"), 0, 1e-6);
    assert_true(metric("m.jsonl", 0, "objective/scores_margin") >= 0);
    const double ended = metric("m.jsonl", 0, "val/contain_eos_token");
    assert_true(ended >= 0 && ended <= 1);
    unlink(files_path("m.jsonl"));
    /* XPO adds alpha log pi of the reference's answers, which here come from the policy's own distribution: -alpha
     * entropy */
    sh(ONLINE JUDGE "-x 1 --per-device-train-batch-size 64 -o $T/a.bin --metrics $T/m.jsonl --online-loss xpo "
                    "--xpo-alpha 0.5");
    const double bonus = metric("m.jsonl", 0, "loss") - 0.693147181,
                 entropy = metric("m.jsonl", 0, "objective/entropy");
    assert_true(bonus < 0 && fabs(bonus + 0.5 * entropy) < 0.2 * entropy);
    unlink(files_path("m.jsonl"));
    /* a judge that scores everything equally: every pair is a tie, and ties have no gradient */
    sh(ONLINE "--reward-cmd 'sed -u s/.*/1/' -x 1 -o $T/a.bin --metrics $T/m.jsonl --drop-ties");
    assert_holds(said, "no pair of this step has scores that differ");
    assert_near(metric("m.jsonl", 0, "ties"), 1, 0);
    assert_true(weights_gap("a.bin", "sft.bin") == 0);
    unlink(files_path("m.jsonl"));
}

/* ---- resumed runs ---------------------------------------------------------------------------------------------- */

static void resumed_runs_end_in_the_same_bytes(void **state) {
    (void)state;
    static const char *const ways[] = {JUDGE, "--reward-model $T/rm.bin --online-loss xpo",
                                       JUDGE "--online-loss nash_md --sync-ref-model --ref-model-sync-steps 2"};
    for (int i = 0; i < 3; i++) {
        sh(ONLINE "%s -x 9 -o $T/whole.bin --state $T/mid.state --save-steps 5", ways[i]);
        sh(ONLINE "%s -x 9 -o $T/parts.bin --resume $T/mid.state", ways[i]);
        assert_same_file("whole.bin", "parts.bin");
        sh("rm -f $T/mid.state*");
    }
}

/* ---- bad input ------------------------------------------------------------------------------------------------- */

static void bad_input(void **state) {
    (void)state;
    refused(2, ONLINE "-o $T/kept", "--online: give --reward-model, --reward, --reward-cmd or --judge");
    refused(2, ONLINE JUDGE "-o $T/kept --loss-type kto", "--online generates pairs");
    refused(2, ONLINE JUDGE "-o $T/kept --precompute-ref-log-probs", "--online samples its completions during the run");
    refused(2, ONLINE JUDGE "-o $T/kept --online-loss xpo --reference-free", "sample from the reference");
    refused(2, ONLINE JUDGE "-o $T/kept --online-loss nash_md --loss-type ipo", "has its own loss");
    refused(2, ONLINE JUDGE "-o $T/kept --temperature 0", "out of range");
    refused(2, ONLINE "-o $T/kept --reward nonsense", "nonsense");
    refused(2, DPO "-o $T/kept --reward-model $T/rm.bin", "used only with --online");
    refused(2, DPO "-o $T/kept --online-loss xpo", "used only with --online");
    refused(1, "./train_dpo -c $T/sft.bin -i $T/prefs.shard --online " JUDGE "-g 6 -o $T/kept", "expected prompt");
    refused(1, ONLINE "--reward-model $T/sft.bin -o $T/kept", "it has no score head");
    refused(1, ONLINE "--reward-model $T/none -o $T/kept", "none");
    run(1, ONLINE "--reward-cmd 'exit 3' -o $T/a.bin -x 2");
    assert_holds(said, "exit 3");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_mixture_is_what_it_is_said_to_be),
        cmocka_unit_test(each_way_raises_the_score),
        cmocka_unit_test(the_start_is_known),
        cmocka_unit_test(resumed_runs_end_in_the_same_bytes),
        cmocka_unit_test(bad_input),
    };
    return cmocka_run_group_tests(tests, setup, models_teardown);
}
