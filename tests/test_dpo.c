/* test_dpo.c - runs of ./train_dpo from shards: its losses against forward passes of single sequences in double,
 * independence of how a step is packed, learning.
 *
 * Needs train_sft, train_dpo, generate, data/make_shard and data/make_prefs. */
#include "../llmc/base/error.h"    /* Error */
#include "../llmc/model/model.h"   /* Model, model_free */
#include "../llmc/records/shard.h" /* Record, Shard, record_free, shard_close, ... */
#include "dpo.h"                   /* DPO, RULE, Truth, truth_of, ... */
#include "files.h"                 /* files_path, text_of */
#include "models.h"                /* assert_near, json_line_of, json_text_of, refused, ... */
#include "run.h"                   /* sh, metric, has_metric, metric_lines, ... */
#include "shell.h"                 /* put, said, assert_holds */

static double log_sigmoid(double x) { return -log1p(exp(-x)); }

/* The mean over all records of a shard of the loss that `what` names, computed from the definitions. */
static double pair_truth(const char *what, const char *shard, const Model *policy, const Model *reference) {
    Error e;
    Shard s;
    Record r = {0};
    if (!shard_open(&s, files_path(shard), &e)) fail_msg("%s", e.text);
    double sum = 0, nll = 0, learned = 0, gold_nll = 0, gold_tokens = 0;
    for (int64_t i = 0; i < s.count; i++) {
        assert_true(shard_record(&s, i, &r, &e));
        const int32_t *w = r.tokens + r.prompt, *l = w + r.length[0];
        const Truth pw = truth_of(policy, r.tokens, r.prompt, w, r.length[0]);
        const Truth pl = truth_of(policy, r.tokens, r.prompt, l, r.length[1]);
        const Truth rw = truth_of(reference, r.tokens, r.prompt, w, r.length[0]);
        const Truth rl = truth_of(reference, r.tokens, r.prompt, l, r.length[1]);
        const double c = pw.logp - rw.logp, d = pl.logp - rl.logp;
        nll -= pw.logp + pw.prompt;
        learned += pw.length + pw.prompt_length;
        if (r.gold) {
            gold_nll -= truth_of(policy, r.tokens, r.prompt, l + r.length[1], r.gold).logp;
            gold_tokens += r.gold;
        }
        if (!strcmp(what, "tpo")) sum -= log_sigmoid(0.3 * (pw.logp - pl.logp));
        if (!strcmp(what, "tpo-l")) sum -= log_sigmoid(0.3 * (pw.logp / pw.length - pl.logp / pl.length) - 0.7);
        if (!strcmp(what, "sigmoid")) sum -= log_sigmoid(0.3 * (c - d));
        if (!strcmp(what, "ipo")) sum += pow(c / pw.length - d / pl.length - 1 / 0.6, 2);
        if (!strcmp(what, "free")) sum -= log_sigmoid(0.3 * (pw.logp - pl.logp));
        if (!strcmp(what, "wpo"))
            sum -=
                log_sigmoid(0.3 * (c - d)) * exp((pw.logp - pw.square) / pw.length + (pl.logp - pl.square) / pl.length);
        if (!strcmp(what, "orpo")) {
            const double a = pw.logp / pw.length, b = pl.logp / pl.length;
            sum -= 0.3 * log_sigmoid(a - log(1 - exp(a)) - b + log(1 - exp(b)));
        }
    }
    sum /= (double)s.count;
    if (!strcmp(what, "orpo")) sum += nll / learned;
    if (!strncmp(what, "tpo", 3)) sum += 0.6 * gold_nll / gold_tokens;
    record_free(&r), shard_close(&s);
    return sum;
}

static void the_losses_are_those_of_single_sequences(void **state) {
    (void)state;
    Model policy = load("sft.bin"), reference = load("other.bin");
    static const struct {
        const char *what, *options;
    } cases[] = {{"sigmoid", "--loss-type sigmoid --reference $T/other.bin"},
                 {"sigmoid", "--loss-type sigmoid --reference $T/other.bin --precompute-ref-log-probs"},
                 {"ipo", "--loss-type ipo --reference $T/other.bin --no-prefix-sharing --micro-tokens 16"},
                 {"free", "--loss-type sigmoid --reference-free"},
                 {"wpo", "--loss-type sigmoid --reference $T/other.bin --use-weighting"},
                 {"orpo", "--loss-type orpo --micro-tokens 16"},
                 {"orpo", "--loss-type orpo --no-prefix-sharing"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sh(DPO "-j $T/held.shard -x 1 -l 0 --beta 0.3 -o $T/a.bin --metrics $T/a.jsonl %s", cases[i].options);
        const double want = pair_truth(cases[i].what, "held.shard", &policy, &reference);
        if (fabs(metric("a.jsonl", -1, "eval_loss") - want) > 2e-6 * fmax(1, fabs(want)))
            fail_msg("%s: %.9g, expected %.9g", cases[i].options, metric("a.jsonl", -1, "eval_loss"), want);
        unlink(files_path("a.jsonl"));
    }
    model_free(&policy), model_free(&reference);
}

/* Two metrics files agree, up to rounding, in everything that a step computes. Another packing changes the order of
 * float32 sums, a relative difference of 1e-6 in a gradient, which four steps of AdamW amplify: 2e-4. */
static void same_numbers(const char *a, const char *b, const char *what) {
    static const char *const keys[] = {"loss",           "grad_norm",      "rewards/margins", "logps/chosen",
                                       "logps/rejected", "rewards/chosen", "entropy",         "mean_token_accuracy"};
    assert_int_equal(metric_lines(a), metric_lines(b));
    for (int i = 0; i < metric_lines(a); i++)
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            const double x = metric(a, i, keys[k]), y = metric(b, i, keys[k]);
            if (!(fabs(x - y) <= 2e-4 * fmax(fabs(x), 0.01)))
                fail_msg("%s: step %d: %s: %.9g and %.9g", what, i + 1, keys[k], x, y);
        }
}

/* Makes a shard of pairs with gold answers of two to eight letters. */
static void make_triples(const char *name, int seed, int count) {
    sh(RULE
       "--count %d --seed %d 2>/dev/null | awk '{ sub(/}$/, \"\"); printf \"%%s,\\\"reference\\\":\\\"%%s\\\"}\\n\", $0, "
       "substr(\"aabacadaab\", 1, 2 + NR %% 7) }' >$T/%s.jsonl && data/make_shard --quiet -i $T/%s.jsonl -o $T/%s",
       count, seed, name, name, name);
}

#define TPO "./train_dpo -c $T/sft.bin -i $T/triples.shard -l 1e-3 --per-device-train-batch-size 16 "

/* TPO: its losses, how they are packed, the options that belong to them, and what is done without gold answers. */
static void tpo_trains_on_gold_answers(void **state) {
    (void)state;
    make_triples("triples.shard", 2, 96);
    make_triples("heldtriples.shard", 3, 40);
    Model policy = load("sft.bin");
    static const char *const cases[][2] = {{"tpo", "tpo"},
                                           {"tpo", "tpo --micro-tokens 24"},
                                           {"tpo", "tpo --no-prefix-sharing"},
                                           {"tpo-l", "tpo-l --tpo-l-gamma 0.7"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sh(TPO
           "-j $T/heldtriples.shard -x 1 -l 0 --beta 0.3 --tpo-alpha 0.6 -o $T/a.bin --metrics $T/a.jsonl --loss-type %s",
           cases[i][1]);
        assert_near(metric("a.jsonl", -1, "eval_loss"), pair_truth(cases[i][0], "heldtriples.shard", &policy, &policy),
                    2e-6);
        unlink(files_path("a.jsonl"));
    }
    model_free(&policy);
    static const char *const ways[] = {"--micro-tokens 24", "--micro-tokens 64 --no-prefix-sharing"};
    sh(TPO "-x 4 -o $T/a.bin --metrics $T/whole.jsonl --loss-type tpo,sigmoid --reference $T/other.bin");
    for (int k = 0; k < 2; k++) {
        sh(TPO "-x 4 -o $T/b.bin --metrics $T/parts.jsonl --loss-type tpo,sigmoid --reference $T/other.bin "
               "--precompute-ref-log-probs %s",
           ways[k]);
        same_numbers("whole.jsonl", "parts.jsonl", "tpo");
        unlink(files_path("parts.jsonl"));
    }
    unlink(files_path("whole.jsonl"));
    /* the gold answers become likelier, and TRL's beta is the default */
    sh(TPO "-x 40 -o $T/a.bin --metrics $T/a.jsonl --loss-type tpo");
    assert_true(metric("a.jsonl", -1, "nll_loss") < metric("a.jsonl", 0, "nll_loss") - 0.25);
    assert_near(metric("a.jsonl", 0, "rewards/chosen"), 0.01 * metric("a.jsonl", 0, "logps/chosen"), 1e-6);
    assert_false(has_metric("a.jsonl", 0, "logratios/chosen"));
    unlink(files_path("a.jsonl"));
    /* without gold answers; with gold answers that the loss does not use, which is said and changes nothing */
    refused(1, DPO "-o $T/kept --loss-type tpo", "prefs.shard: 96 of 96 pairs have no gold answer (field reference)");
    sh(DPO "-x 1 -o $T/a.bin --loss-type tpo --tpo-alpha 0");
    sh(TPO "-x 2 -o $T/a.bin --metrics $T/a.jsonl");
    assert_holds(said, "triples.shard: the gold answers of 96 records (field reference) are not used");
    sh(DPO "-x 2 -o $T/b.bin --metrics $T/b.jsonl");
    same_numbers("a.jsonl", "b.jsonl", "unused gold answers");
    unlink(files_path("a.jsonl")), unlink(files_path("b.jsonl"));
    sh(TPO "-x 1 -o $T/a.bin --loss-type kto");
    assert_holds(said, "the gold answers of 96 records");
    refused(2, TPO "-o $T/kept --tpo-alpha 2", "--tpo-alpha: used only with --loss-type tpo or tpo-l");
    refused(2, TPO "-o $T/kept --loss-type tpo --tpo-l-gamma 2", "--tpo-l-gamma: used only with --loss-type tpo-l");
    refused(2, TPO "-o $T/kept --loss-type tpo --reference $T/other.bin", "no reference is used by --loss-type");
    refused(2, "./train_dpo -c $T/sft.bin -i $T/chat.shard --online --reward verify --loss-type tpo -o $T/kept",
            "--online: generated pairs have no gold answer");
}

/* The policy against itself: every log-ratio is 0, so the losses are known. */
static void the_start_is_known(void **state) {
    (void)state;
    static const struct {
        const char *loss;
        double value;
    } cases[] = {{"sigmoid", 0.693147181},
                 {"hinge", 1},
                 {"ipo", 25},
                 {"sppo_hard", 50},
                 {"apo_zero", 1},
                 {"apo_down", 1},
                 {"aot", 0.693147181},
                 {"bco_pair", 1.386294361},
                 {"nca_pair", 1.386294361},
                 {"discopop", 0.846573590}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sh(DPO "-x 1 -o $T/a.bin --metrics $T/b.jsonl --loss-type %s", cases[i].loss);
        assert_near(metric("b.jsonl", 0, "loss"), cases[i].value, 1e-6 * cases[i].value);
        assert_near(metric("b.jsonl", 0, "rewards/margins"), 0, 1e-7);
        assert_true(has_metric("b.jsonl", 0, "entropy") && has_metric("b.jsonl", 0, "mean_token_accuracy"));
        unlink(files_path("b.jsonl"));
    }
    /* before the first step all pairs are ties, half of a win each; validation is not part of a step's time */
    sh(DPO "-x 1 -o $T/a.bin -j $T/held.shard --metrics $T/b.jsonl");
    assert_holds(said, "eval  step 0 | loss 0.6931 | accuracy  50.0%");
    unlink(files_path("b.jsonl"));
    sh(KTO "-x 1 -o $T/a.bin --metrics $T/b.jsonl");
    assert_near(metric("b.jsonl", 0, "loss"), 0.5, 1e-7);
    assert_near(metric("b.jsonl", 0, "kl"), 0, 1e-7);
    unlink(files_path("b.jsonl"));
}

/* ---- packing --------------------------------------------------------------------------------------------------- */

static void packing_changes_nothing(void **state) {
    (void)state;
    static const char *const losses[] = {"sigmoid,sft --use-weighting --ld-alpha 0.3", "aot,ipo --label-smoothing 0.1",
                                         "orpo,simpo,cpo", "sigmoid --sync-ref-model --ref-model-sync-steps 2"};
    static const char *const ways[] = {"--micro-tokens 16", "--micro-tokens 48 --no-prefix-sharing",
                                       "--recompute 2 --precompute-ref-log-probs"};
    for (size_t l = 0; l < sizeof losses / sizeof *losses; l++) {
        const bool fixed = strstr(losses[l], "orpo") || strstr(losses[l], "simpo") || strstr(losses[l], "sync");
        sh(DPO "-x 4 -o $T/a.bin --metrics $T/whole.jsonl --loss-type %s", losses[l]);
        for (size_t k = 0; k < sizeof ways / sizeof *ways - fixed; k++) {
            sh(DPO "-x 4 -o $T/b.bin --metrics $T/parts.jsonl --loss-type %s %s", losses[l], ways[k]);
            same_numbers("whole.jsonl", "parts.jsonl", losses[l]);
            unlink(files_path("parts.jsonl"));
        }
        unlink(files_path("whole.jsonl"));
    }
    /* KTO's reference point is computed over the whole step */
    const char *base = KTO "-x 5 -o $T/a.bin --reference $T/weak.bin";
    sh("./train_sft --layers 1 --width 32 --heads 2 --context 16 -i $T/chat.shard -o $T/weak.bin -x 1");
    sh("%s --metrics $T/whole.jsonl", base);
    assert_true(metric("whole.jsonl", -1, "kl") > 1); /* because the reference gives all answers a small probability */
    sh("%s --metrics $T/parts.jsonl --micro-tokens 16", base);
    for (int i = 0; i < 5; i++) {
        assert_near(metric("parts.jsonl", i, "kl"), metric("whole.jsonl", i, "kl"), 1e-4);
        assert_near(metric("parts.jsonl", i, "loss"), metric("whole.jsonl", i, "loss"), 1e-6);
    }
    unlink(files_path("parts.jsonl")), unlink(files_path("whole.jsonl"));
}

/* A prompt with a mismatched answer may be longer than any record; the micro-batch must have room for it. */
static void the_longest_mismatch_fits(void **state) {
    (void)state;
    put("odd.jsonl", "{\"prompt\":\"a:\",\"completion\":\"abcdabcd\",\"label\":true}\n"
                     "{\"prompt\":\"abcdabcd:\",\"completion\":\"b\",\"label\":false}\n");
    sh("data/make_shard --quiet -i $T/odd.jsonl -o $T/odd.shard");
    sh("./train_dpo -c $T/sft.bin -i $T/odd.shard -j $T/odd.shard --per-device-train-batch-size 2 -x 2 "
       "--micro-tokens 16 --loss-type kto -o $T/a.bin");
    sh("./train_dpo -c $T/sft.bin -i $T/odd.shard --per-device-train-batch-size 2 -x 2 --micro-tokens 16 "
       "--loss-type kto -o $T/a.bin --precompute-ref-log-probs");
}

/* A step over all pairs does not depend on their order, which the seed determines. */
static void order_changes_nothing(void **state) {
    (void)state;
    for (int seed = 1; seed <= 2; seed++)
        sh(DPO "--per-device-train-batch-size 96 -x 3 -o $T/a.bin --metrics $T/%d.jsonl --seed %d "
               "--loss-type sigmoid,aot,sft",
           seed, seed);
    same_numbers("1.jsonl", "2.jsonl", "order");
    unlink(files_path("1.jsonl")), unlink(files_path("2.jsonl"));
}

/* ---- learning -------------------------------------------------------------------------------------------------- */

/* Counts the letter in each answer that one policy gives to the four prompts. */
enum { ASKED = 4 * 40 };
static void sample(const char *model, int count[ASKED]) {
    put("ask.jsonl", "{\"prompt\":\"a:\"}\n{\"prompt\":\"b:\"}\n{\"prompt\":\"c:\"}\n{\"prompt\":\"d:\"}\n");
    sh("./generate -c $T/%s -i $T/ask.jsonl --num-samples 40 -g 4 --temperature 1 -o $T/said.jsonl", model);
    char *text = text_of(files_path("said.jsonl"));
    assert_int_equal(lines_of(text), ASKED);
    for (int i = 0; i < ASKED; i++) {
        json_t *row = json_line_of(text, i);
        const char *c = json_text_of(row, "completion");
        for (count[i] = 0; *c; c++) count[i] += *c == 'a';
        json_decref(row);
    }
    free(text);
}

/* The share of answers that the rule prefers to the SFT model's; a tie counts half. */
static double win_rate(const char *model) {
    int mine[ASKED], theirs[ASKED];
    double wins = 0;
    sample(model, mine);
    sample("sft.bin", theirs);
    for (int i = 0; i < ASKED; i++) wins += mine[i] > theirs[i] ? 1 : mine[i] == theirs[i] ? 0.5 : 0;
    return wins / ASKED;
}

static void dpo_learns_the_rule(void **state) {
    (void)state;
    sh(DPO "-j $T/held.shard -x 40 -l 3e-3 -o $T/dpo.bin --metrics $T/m.jsonl");
    assert_true(metric("m.jsonl", -1, "eval_rewards/accuracies") > 0.9);
    assert_true(win_rate("dpo.bin") > 0.8);
    unlink(files_path("m.jsonl"));
}

static void kto_learns_from_answers_without_pairs(void **state) {
    (void)state;
    sh(RULE "--count 96 --seed 2 --format unpaired --min-length 4" SHARD "$T/few.shard");
    sh("./train_dpo --loss-type kto -c $T/sft.bin -i $T/few.shard --per-device-train-batch-size 16 -x 60 -l 3e-3 "
       "-o $T/kto.bin --desirable-weight 3.5");
    assert_true(win_rate("kto.bin") > 0.8);
}

/* KTO on pairs is KTO on their completions, each labelled, bit for bit if the records have the same order. */
static void kto_takes_pairs(void **state) {
    (void)state;
    sh(RULE "--count 30 --seed 2 2>/dev/null >$T/pairs.jsonl");
    put("unpair.py",
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    r = json.loads(line)\n"
        "    for k in ('chosen', 'rejected'):\n"
        "        print(json.dumps({'prompt': r['prompt'], 'completion': r[k], 'label': k == 'chosen'}))\n");
    sh("data/make_shard --quiet -i $T/pairs.jsonl -o $T/p.shard");
    sh("python3 $T/unpair.py <$T/pairs.jsonl | data/make_shard --quiet -i - -o $T/u.shard");
    const char *loss[] = {"kto", "apo_zero_unpaired"}, *name[] = {"p", "u"};
    for (int l = 0; l < 2; l++) {
        for (int i = 0; i < 2; i++)
            sh("./train_dpo --loss-type %s -c $T/sft.bin -i $T/%s.shard -j $T/%s.shard --eval-steps 4 -x 9 -l 1e-3 "
               "--max-length 6 -o $T/%s.bin --metrics $T/%s.jsonl",
               loss[l], name[i], name[i], name[i], name[i]);
        assert_true(weights_gap("p.bin", "u.bin") == 0);
        for (int line = 0; line < 9; line++)
            assert_true(metric("p.jsonl", line, "loss") == metric("u.jsonl", line, "loss"));
        assert_true(metric("p.jsonl", -1, "eval_rewards/margins") == metric("u.jsonl", -1, "eval_rewards/margins"));
        assert_true(metric("p.jsonl", -1, "num_tokens") == metric("u.jsonl", -1, "num_tokens"));
    }
    unlink(files_path("p.jsonl")), unlink(files_path("u.jsonl"));
}

/* A step whose completions all have the same label has no margin: it is left out of lines, metrics and report. */
static void a_mean_over_nothing_is_left_out(void **state) {
    (void)state;
    sh("grep -h . $T/labels.shard >/dev/null; " RULE
       "--count 8 --seed 2 --format unpaired 2>/dev/null | grep '\"label\":true' >$T/good.jsonl");
    sh("data/make_shard --quiet -i $T/good.jsonl -o $T/good.shard 2>/dev/null");
    sh("./train_dpo --loss-type kto -c $T/sft.bin -i $T/good.shard -j $T/good.shard -x 2 -l 1e-3 -o $T/a.bin "
       "--metrics $T/m.jsonl --report $T/r.html");
    assert_null(strstr(said, "nan"));
    assert_holds(said, "eval  step 2 | loss");
    assert_false(has_metric("m.jsonl", 0, "rewards/margins"));
    sh("! grep -qi '[^a-z]nan[^a-z]' $T/r.html && ! grep '^{.step' $T/m.jsonl | grep -q nan");
    unlink(files_path("m.jsonl"));
}

/* Labels without noise, few pairs, many passes: DPO's margin keeps growing, while IPO's stays at the minimum of its
 * loss, where the log-ratios differ by 1/(2 beta). */
static void ipo_keeps_its_margin_bounded(void **state) {
    (void)state;
    sh(RULE "--count 8 --seed 5 --min-length 4" SHARD "$T/few.shard");
    const char *base = "./train_dpo -c $T/sft.bin -i $T/few.shard --per-device-train-batch-size 8 -l 3e-3 "
                       "--lr-scheduler-type constant --beta 0.5 -o $T/a.bin";
    sh("%s -x 150 --loss-type sigmoid --metrics $T/dpo.jsonl", base);
    sh("%s -x 150 --loss-type ipo_sum --metrics $T/ipo.jsonl", base);
    /* rewards are beta times log-ratios, so the minimum is at a margin of 1/2 */
    const double early = metric_mean("ipo.jsonl", 90, 100, "rewards/margins"),
                 late = metric_mean("ipo.jsonl", 140, 150, "rewards/margins");
    assert_true(fabs(early - 0.5) < 0.2 && fabs(late - 0.5) < 0.2);
    assert_true(metric("dpo.jsonl", 149, "rewards/margins") > 4);
    assert_true(metric("dpo.jsonl", 149, "rewards/margins") > metric("dpo.jsonl", 99, "rewards/margins") + 0.1);
    unlink(files_path("dpo.jsonl")), unlink(files_path("ipo.jsonl"));
}

/* After a sync the reference equals the policy, as in a new run that starts there. */
static void a_synced_reference_is_the_policy(void **state) {
    (void)state;
    /* alpha 1: after each sync the policy is its own reference, and the loss starts at log 2 again */
    sh(DPO "-x 6 -o $T/a.bin --sync-ref-model --ref-model-sync-steps 2 --ref-model-mixup-alpha 1 --metrics $T/m.jsonl");
    for (int i = 0; i < 6; i += 2) assert_near(metric("m.jsonl", i, "loss"), 0.693147181, 1e-6);
    assert_true(fabs(metric("m.jsonl", 1, "loss") - 0.693147181) > 1e-4);
    unlink(files_path("m.jsonl"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_losses_are_those_of_single_sequences),
        cmocka_unit_test(tpo_trains_on_gold_answers),
        cmocka_unit_test(the_start_is_known),
        cmocka_unit_test(packing_changes_nothing),
        cmocka_unit_test(order_changes_nothing),
        cmocka_unit_test(the_longest_mismatch_fits),
        cmocka_unit_test(dpo_learns_the_rule),
        cmocka_unit_test(kto_learns_from_answers_without_pairs),
        cmocka_unit_test(kto_takes_pairs),
        cmocka_unit_test(a_mean_over_nothing_is_left_out),
        cmocka_unit_test(ipo_keeps_its_margin_bounded),
        cmocka_unit_test(a_synced_reference_is_the_policy),
    };
    return cmocka_run_group_tests(tests, dpo_setup, models_teardown);
}
