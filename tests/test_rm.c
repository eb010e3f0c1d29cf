/* test_rm.c - ./train_rm, and ./evaluate with reward models: they learn a known rule, and learn less of it from noisy
 * labels; the loss is the formula's on scores computed one answer at a time; packing, prefix sharing and interruptions
 * change nothing; scores are normalised; best-of-n, weighted majority and the aggregation of steps; bad input.
 *
 * Needs train_rm, train_sft, evaluate, data/make_prefs and data/make_shard. */
#include "../llmc/base/error.h"          /* Error, xstrdup */
#include "../llmc/cpu/cpu.h"             /* backend_cpu */
#include "../llmc/model/batch.h"         /* Batch */
#include "../llmc/model/model.h"         /* Model, model_free */
#include "../llmc/model/model_file.h"    /* model_load, model_save */
#include "../llmc/model/model_fits.h"    /* FitSide, fit_model */
#include "../llmc/model/model_load.h"    /* ModelFile, model_file_free */
#include "../llmc/model/pack.h"          /* batch_free, batch_new, batch_clear, batch_segment, ... */
#include "../llmc/model/transformer.h"   /* ModelOutput, model_forward */
#include "../llmc/model/workspace.h"     /* Workspace, workspace_free, workspace_new */
#include "../llmc/records/examples.h"    /* Example, examples_close, examples_open, Examples, ... */
#include "../llmc/records/ranked.h"      /* Ranked, RankedRecords, ranked_close, ranked_open, ranked_open_all */
#include "../llmc/records/shard.h"       /* RECORD_STEP, RECORD_UNPAIRED, RECORD_PREFERENCE, Record, ... */
#include "../llmc/reward/calibration.h"  /* CALIBRATION_BINS */
#include "../llmc/reward/reward_model.h" /* reward_model_score, PRM_MIN, RewardItem, RewardModel, ... */
#include "../llmc/rollout/votes.h"       /* weighted_right, votes_at_k */
#include "files.h"                       /* files_path, text_of */
#include "models.h"                      /* refused, assert_near, json_number_of, models_device, ... */
#include "run.h"                         /* metric, sh, metric_lines, weights_gap, ... */
#include "shell.h"                       /* assert_holds, said, out, put, ... */

#include "../llmc/records/labelled.h" /* labelled_fit, labelled_open, FIT_DROP, labelled_close, ... */
#include "../llmc/reward/gold.h"      /* gold_score, Gold, gold_parse */

#define RULE "--rule char=a:1,length:-0.5"
#define TINY "--layers 2 --width 32 --heads 2 --context 48 "

/* Data of make_prefs as a shard. */
static void make(const char *name, const char *options) {
    sh("data/make_prefs %s 2>$T/.made | data/make_shard --quiet -i - -o $T/%s", options, name);
}

static int setup(void **state) {
    if (models_setup(state)) return 1;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    make("pairs.shard", RULE " --count 1500");
    make("held.shard", RULE " --count 300 --split heldout");
    make("margins.shard", RULE " --count 40 --margin");
    make("four.shard", RULE " --count 20 --format ranking");
    make("three.shard", RULE " --count 15 --format ranking --num-completions 3 --seed 2");
    make("answers.shard", RULE " --count 1500 --format unpaired");
    make("held_answers.shard", RULE " --count 300 --format unpaired --split heldout");
    make("steps.shard", "--rule sum --digits 1 --terms 3 --count 60 --format step");
    make("chat.shard", RULE " --count 500 --format chat");
    make("prompts.shard", RULE " --count 20 --format prompt");
    sh("./train_rm " TINY "-i $T/margins.shard -o $T/start.bin -x 1 -l 0"); /* a model with an untrained head */
    return 0;
}

/* ---- the loss by the formula ------------------------------------------------------------------------------------ */

typedef struct Scorer {
    Model model;
    ModelFile file;
    Workspace work;
    Batch batch;
} Scorer;

static Scorer scorer_open(const char *name) {
    Error e;
    Scorer s;
    if (!model_load(&s.model, &s.file, files_path(name), NULL, true, backend_cpu(), models_device, false, 0, NULL, &e))
        fail_msg("%s", e.text);
    assert_true(workspace_new(&s.work, &s.model, 64, 64, 1, false, 0, &e));
    s.batch = batch_new(64, 64, 1);
    return s;
}

static void scorer_close(Scorer *s) {
    workspace_free(&s->work, &s->model), batch_free(&s->batch);
    model_free(&s->model), model_file_free(&s->file);
}

/* The head's output at token `at` of a prompt with its answer, in a segment of its own. */
static double head_at(Scorer *s, const int32_t *prompt, int n, const int32_t *answer, int m, int at) {
    float value;
    int32_t all[64];
    memcpy(all, prompt, (size_t)n * sizeof *all);
    memcpy(all + n, answer, (size_t)m * sizeof *all);
    batch_clear(&s->batch);
    batch_segment(&s->batch, all, n + m, 0, -1);
    batch_target(&s->batch, at, 0);
    model_forward(&s->model, &s->work, &s->batch, 1.0f, &(ModelOutput){.value = &value});
    return value;
}

/* -ln sigma(x) by its definition. */
static double nats(double x) { return log(1 + exp(-x)); }

/* The head's output for completion k of a ranking. */
static double score_of(Scorer *s, const Ranked *q, int k) {
    const RankedCompletion *c = &q->completion[k];
    return head_at(s, q->prompt, q->prompt_len, c->tokens, c->count, q->prompt_len + c->count - 1);
}

static void pairs_loss(void **state) {
    (void)state;
    Error e;
    RankedRecords p;
    Scorer s = scorer_open("start.bin");
    double plain = 0, full = 0, least = INFINITY, total = 0, right = 0, gap = 0;
    assert_true(ranked_open(&p, files_path("margins.shard"), &e));
    for (int64_t i = 0; i < p.count; i++) {
        const Ranked *q = &p.record[i];
        const double c = score_of(&s, q, 0), r = score_of(&s, q, 1);
        assert_true(q->margin > 0 && q->count == 2);
        plain += nats(c - r) / (double)p.count;
        full += (0.9 * nats(c - r - q->margin) + 0.1 * nats(-(c - r - q->margin)) + 0.3 * (c + r) * (c + r)) /
                (double)p.count;
        least = fmin(least, fmin(c, r));
        total += c + r;
        right += c > r;
        gap += c - r;
    }
    const char *const packings[] = {"--micro-tokens 4096", "--micro-tokens 64", "--micro-tokens 64 --no-prefix-sharing",
                                    "--no-prefix-sharing --seed 9"};
    for (int k = 0; k < 4; k++) {
        sh("./train_rm -c $T/start.bin -i $T/margins.shard -o $T/x.bin -x 1 --per-device-train-batch-size 40 -l 0 "
           "--metrics $T/m.jsonl "
           "--label-smoothing 0.1 --center-rewards-coefficient 0.3 %s && mv $T/m.jsonl $T/full%d.jsonl",
           packings[k], k);
        char name[32];
        snprintf(name, sizeof name, "full%d.jsonl", k);
        assert_near(metric(name, 0, "loss"), full, 1e-5);
        assert_near(metric(name, 0, "grad_norm"), metric("full0.jsonl", 0, "grad_norm"), 1e-4);
        assert_near(metric(name, 0, "min_reward"), least, 1e-5);
        assert_near(metric(name, 0, "mean_reward"), total / (2 * (double)p.count), 1e-5);
        assert_near(metric(name, 0, "accuracy"), right / (double)p.count, 1e-12);
        assert_near(metric(name, 0, "margin"), gap / (double)p.count, 1e-5);
    }
    sh("./train_rm -c $T/start.bin -i $T/margins.shard -o $T/x.bin -x 1 --per-device-train-batch-size 40 -l 0 "
       "--metrics $T/plain.jsonl --no-use-margin");
    assert_near(metric("plain.jsonl", 0, "loss"), plain, 1e-5);
    ranked_close(&p), scorer_close(&s);
}

/* Rankings of four, of three and pairs with margins in one step, and their figures on held-out data. */
static void rankings_loss(void **state) {
    (void)state;
    Error e;
    RankedRecords p;
    Scorer s = scorer_open("start.bin");
    const char *const paths[] = {xstrdup(files_path("four.shard")), xstrdup(files_path("three.shard")),
                                 xstrdup(files_path("margins.shard"))};
    if (!ranked_open_all(&p, paths, 3, &e)) fail_msg("%s", e.text);
    assert_int_equal(p.count, 75);
    assert_int_equal(p.longer, 35);
    double pairwise = 0, order = 0, pairs = 0, right = 0, gap = 0, completions = 0, total = 0;
    for (int64_t i = 0; i < p.count; i++) {
        const Ranked *q = &p.record[i];
        const double own = q->count * (q->count - 1) / 2;
        double score[4], half = 0, centre = 0, likely = 1;
        assert_int_equal(q->count, i < 20 ? 4 : i < 35 ? 3 : 2);
        for (int k = 0; k < q->count; k++) total += score[k] = score_of(&s, q, k);
        for (int k = 0; k < q->count; k++) {
            double rest = 0;
            for (int j = k; j < q->count; j++) rest += exp(score[j]);
            likely *= exp(score[k]) / rest;
            for (int j = k + 1; j < q->count; j++) {
                half += nats(score[k] - score[j] - q->margin) / own;
                centre += 0.3 * (score[k] + score[j]) * (score[k] + score[j]) / own;
                right += score[k] > score[j];
                gap += score[k] - score[j];
            }
        }
        pairs += own;
        completions += q->count;
        pairwise += (half + centre) / 75;
        order += (q->count > 2 ? -log(likely) : half) / 75;
    }
#define RANKED                                                                                                         \
    "./train_rm -c $T/start.bin -i $T/four.shard -i $T/three.shard -i $T/margins.shard -o $T/x.bin -x 1 "              \
    "--per-device-train-batch-size 75 -l 0 "
    const char *const packings[] = {"", "--micro-tokens 64", "--micro-tokens 64 --no-prefix-sharing"};
    for (int k = 0; k < 3; k++) {
        sh("rm -f $T/r.jsonl $T/o.jsonl && " RANKED "%s --metrics $T/r.jsonl --center-rewards-coefficient 0.3 "
           "-j $T/three.shard -j $T/four.shard -j $T/margins.shard",
           packings[k]);
        assert_near(metric("r.jsonl", 0, "loss"), pairwise, 1e-5);
        assert_near(metric("r.jsonl", -1, "eval_loss"), pairwise, 1e-5);
        for (int val = 0; val < 2; val++) {
            const char *names[] = {"accuracy",    "eval_accuracy", "margin",
                                   "eval_margin", "mean_reward",   "eval_mean_reward"};
            assert_near(metric("r.jsonl", val - 1, names[val]), right / pairs, 1e-12);
            assert_near(metric("r.jsonl", val - 1, names[2 + val]), gap / pairs, 1e-5);
            assert_near(metric("r.jsonl", val - 1, names[4 + val]), total / completions, 1e-5);
        }
        sh(RANKED "%s --metrics $T/o.jsonl --loss-type plackett_luce", packings[k]);
        assert_near(metric("o.jsonl", 0, "loss"), order, 1e-5);
        static double norm[2];
        const double own[] = {metric("r.jsonl", 0, "grad_norm"), metric("o.jsonl", 0, "grad_norm")};
        for (int i = 0; i < 2; i++) {
            if (!k) norm[i] = own[i];
            assert_near(own[i], norm[i], 1e-4 * norm[i]);
        }
    }
    for (int i = 0; i < 3; i++) free((char *)paths[i]);
    ranked_close(&p), scorer_close(&s);
    /* every pair of a ranking is counted: 20 rankings of four have 120 */
    sh("./evaluate --reward-model $T/start.bin -i $T/four.shard");
    assert_holds(said, "on 20 records, 120 pairs");
    sh("./train_rm -c $T/start.bin -i $T/four.shard -o $T/x.bin -x 1 -l 0 --normalize none --metrics $T/f.jsonl "
       "--per-device-train-batch-size 20 && ./evaluate --reward-model $T/x.bin -i $T/four.shard > $T/four.json");
    json_t *figures = json_load_file(files_path("four.json"), 0, NULL);
    assert_near(json_number_of(figures, "accuracy"), metric("f.jsonl", 0, "accuracy"), 1e-12);
    assert_near(json_number_of(figures, "margin"), metric("f.jsonl", 0, "margin"), 1e-5);
    json_decref(figures);
    /* gold answers have no place in an order, and are not dropped without a word */
    sh("echo '{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\",\"reference\":\"d\"}' | "
       "data/make_shard --quiet -i - -o $T/gold.shard");
    static const char *const programs[] = {"./evaluate --reward-model $T/start.bin -i $T/gold.shard",
                                           "./train_rm -c $T/start.bin -i $T/gold.shard -o $T/x.bin -x 1"};
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        sh("%s", programs[i]);
        assert_holds(said, "gold.shard: the gold answers of 1 records (field reference) are not used");
    }
}

/* The samples file of a run without a learning rate has the first eight solutions twice, each step with its text, its label and
 * the head's output. */
static void solutions_are_those_of(Scorer *s, const Examples *x) {
    char *text = text_of(files_path("all.samples.jsonl"));
    assert_int_equal(lines_of(text), 16);
    for (int line = 0; line < 16; line++) {
        json_t *row = json_line_of(text, line), *steps = json_object_get(row, "steps");
        const Example *q = &x->example[line % 8];
        assert_string_equal(json_text_of(row, "when"), line < 8 ? "before" : "after");
        assert_int_equal(json_array_size(steps), q->labels);
        for (int k = 0, from = 0; k < q->labels; k++) {
            const json_t *step = json_array_get(steps, (size_t)k);
            const char *words = json_text_of(step, "text");
            assert_int_equal(strlen(words), q->at[k] + 1 - from);
            for (int i = 0; words[i]; i++) assert_int_equal(words[i], q->completion[from + i]);
            from = q->at[k] + 1;
            assert_true(json_number_of(step, "label") == q->label[k]);
            assert_near(
                json_number_of(step, "score"),
                head_at(s, q->prompt, q->prompt_len, q->completion, q->completion_len, q->prompt_len + q->at[k]), 1e-5);
        }
        json_decref(row);
    }
    free(text);
}

static void steps_loss(void **state) {
    (void)state;
    Error e;
    Examples x;
    Scorer s = scorer_open("start.bin");
    double all = 0, last = 0, right = 0;
    assert_true(examples_open(&x, files_path("steps.shard"), RECORD_STEP, false, &e));
    assert_int_equal(x.count, 60);
    for (int64_t i = 0; i < x.count; i++) {
        const Example *q = &x.example[i];
        assert_int_equal(q->labels, 2);
        for (int k = 0; k < 2; k++) {
            assert_int_equal(q->completion[q->at[k]], '\n');
            const double v =
                head_at(&s, q->prompt, q->prompt_len, q->completion, q->completion_len, q->prompt_len + q->at[k]);
            all += nats(q->label[k] ? v : -v) / 120;
            right += (v > 0) == q->label[k];
            if (k) last += nats(q->label[k] ? v : -v) / 60;
        }
    }
#define STEPS                                                                                                          \
    "./train_rm --kind prm -c $T/start.bin -i $T/steps.shard -o $T/x.bin -x 1 --per-device-train-batch-size 60 -l 0 "
    sh(STEPS "--metrics $T/all.jsonl && " STEPS "--metrics $T/small.jsonl --micro-tokens 64 && " STEPS
             "--metrics $T/last.jsonl --train-on-last-step-only");
    assert_near(metric("all.jsonl", 0, "loss"), all, 1e-5);
    assert_near(metric("all.jsonl", 0, "accuracy"), right / 120, 1e-12);
    assert_near(metric("small.jsonl", 0, "loss"), all, 1e-5);
    assert_near(metric("small.jsonl", 0, "grad_norm"), metric("all.jsonl", 0, "grad_norm"), 1e-4);
    assert_near(metric("last.jsonl", 0, "loss"), last, 1e-5);
    assert_false(has_metric("all.jsonl", 0, "margin"));
    solutions_are_those_of(&s, &x);
    examples_close(&x);
    /* outcomes: one label per answer, at its last token */
    double loss = 0;
    assert_true(examples_open(&x, files_path("held_answers.shard"), RECORD_UNPAIRED, false, &e));
    for (int64_t i = 0; i < x.count; i++) {
        const Example *q = &x.example[i];
        const double v = head_at(&s, q->prompt, q->prompt_len, q->completion, q->completion_len,
                                 q->prompt_len + q->completion_len - 1);
        loss += nats(q->label[0] ? v : -v) / 300;
    }
    sh("./train_rm --kind orm -c $T/start.bin -i $T/held_answers.shard -o $T/x.bin -x 1 "
       "--per-device-train-batch-size 300 -l 0 --metrics $T/orm.jsonl --micro-tokens 100");
    assert_near(metric("orm.jsonl", 0, "loss"), loss, 1e-5);
    examples_close(&x), scorer_close(&s);
}

/* ---- learning, independence of packing -------------------------------------------------------------------------- */

static void learns_a_rule(void **state) {
    (void)state;
    for (int seed = 1; seed <= 3; seed++) {
        sh("./train_rm " TINY "-i $T/pairs.shard -j $T/held.shard -o $T/rm.bin -x 100 "
           "--per-device-train-batch-size 32 -l 3e-3 --warmup-steps 10 --seed %d --metrics $T/learn%d.jsonl",
           seed, seed);
        char name[32];
        snprintf(name, sizeof name, "learn%d.jsonl", seed);
        assert_true(metric(name, -1, "eval_accuracy") > 0.9);
        assert_true(metric(name, -1, "eval_loss") < 0.25 && metric(name, -1, "eval_margin") > 1);
        assert_near(metric(name, -1, "eval_ece"), 0.05, 0.05);
    }
    sh("./train_rm --kind orm " TINY "-i $T/answers.shard -j $T/held_answers.shard -o $T/orm.bin -x 120 "
       "--per-device-train-batch-size 32 -l 3e-3 --warmup-steps 10 --metrics $T/learn.jsonl");
    assert_true(metric("learn.jsonl", -1, "eval_accuracy") > 0.9);
}

/* Trained on labels of which a fraction is flipped, evaluated on correct labels. */
static void noise_costs(void **state) {
    (void)state;
    double accuracy[3];
    const char *const rates[] = {"0.2", "0.35", "0.5"};
    for (int k = 0; k < 3; k++) {
        char options[128];
        snprintf(options, sizeof options, RULE " --count 400 --flip %s", rates[k]);
        make("noisy.shard", options);
        sh("./train_rm " TINY "-i $T/noisy.shard -j $T/held.shard -o $T/noisy.bin --num-train-epochs 8 "
           "--per-device-train-batch-size 32 -l 3e-3 --warmup-steps 10 --metrics $T/noisy.jsonl");
        accuracy[k] = metric("noisy.jsonl", -1, "eval_accuracy");
        unlink(files_path("noisy.jsonl"));
    }
    assert_true(accuracy[0] > 0.7 && accuracy[0] > accuracy[1] && accuracy[1] > accuracy[2] + 0.05);
    assert_near(accuracy[2], 0.5, 0.2);
}

static void packing_changes_nothing(void **state) {
    (void)state;
#define PACK                                                                                                           \
    "./train_rm -c $T/start.bin -i $T/pairs.shard -x 12 --per-device-train-batch-size 16 -l 1e-3 --normalize none "
    sh(PACK "-o $T/a.bin --metrics $T/a.jsonl");
    sh(PACK "-o $T/b.bin --metrics $T/b.jsonl --micro-tokens 64");
    sh(PACK "-o $T/c.bin --metrics $T/c.jsonl --micro-tokens 256 --no-prefix-sharing");
    sh(PACK "-o $T/d.bin --metrics $T/d.jsonl --recompute 2");
    for (int i = 0; i < 12; i++)
        for (const char *const *name = (const char *const[]){"b.jsonl", "c.jsonl", "d.jsonl", NULL}; *name; name++)
            /* other orders of float32 sums: 1e-6 in a gradient, amplified by the steps before */
            assert_near(metric(*name, i, "loss"), metric("a.jsonl", i, "loss"), 2e-5);
    /* a weight moves by 1e-3 per step at most; 2e-4 is a fifth of one step, for gradients that are almost 0 */
    assert_true(weights_gap("a.bin", "b.bin") < 2e-4);
    assert_true(weights_gap("a.bin", "c.bin") < 2e-4);
    assert_near(metric("c.jsonl", -1, "num_tokens"), metric("a.jsonl", -1, "num_tokens"), 0);
}

/* ---- interruptions ---------------------------------------------------------------------------------------------- */

/* Runs `command` without interruption, then with a signal after about each of these numbers of metrics lines, resuming
 * each time. The run may end before a later signal arrives. */
static void resumes(const char *command, const int *stops, int count) {
    char text[1200];
    bool over = false;
    sh("%s -o $T/whole.bin --metrics $T/whole.jsonl", command);
    unlink(files_path("parts.jsonl")), unlink(files_path("parts.bin"));
    for (int i = 0; !over; i++) {
        const int lines = i ? metric_lines("parts.jsonl") : 0;
        snprintf(text, sizeof text, "%s -o $T/parts.bin --metrics $T/parts.jsonl %s", command,
                 i ? "--resume $T/parts.bin.state" : "");
        const pid_t pid = run_start(text);
        if (i < count) { /* a message of its own shows that it has started */
            run_until(files_path("parts.jsonl"), stops[i] > lines ? stops[i] : lines + 1);
            kill(pid, i % 2 ? SIGINT : SIGTERM);
        }
        if (run_wait(pid, 120)) fail_msg("%s: %s", text, said);
        over = !strstr(said, "stopped by a signal after step");
        assert_int_equal(access(files_path("parts.bin"), F_OK), over ? 0 : -1);
        assert_true(!over || i > 0);
    }
    assert_same_file("whole.bin", "parts.bin");
    assert_int_equal(metric_lines("whole.jsonl"), metric_lines("parts.jsonl"));
    for (int i = 0; i < metric_lines("whole.jsonl"); i += 17)
        assert_true(metric("whole.jsonl", i, "loss") == metric("parts.jsonl", i, "loss") &&
                    metric("whole.jsonl", i, "mean_reward") == metric("parts.jsonl", i, "mean_reward"));
    unlink(files_path("whole.jsonl"));
}

static void resumes_bit_for_bit(void **state) {
    (void)state;
    resumes("./train_rm -c $T/start.bin -i $T/pairs.shard -j $T/held.shard -x 800 --per-device-train-batch-size 4 "
            "--eval-steps 200 -l 1e-3 --warmup-steps 10 --micro-tokens 96 "
            "--center-rewards-coefficient 0.01 --weight-decay 0.1",
            (const int[]){2, 150, 300}, 3);
    resumes("./train_rm -c $T/start.bin -i $T/four.shard -i $T/pairs.shard -x 400 --per-device-train-batch-size 4 "
            "-l 1e-3 --micro-tokens 96 --loss-type plackett_luce",
            (const int[]){2}, 1);
    resumes("./train_rm --kind prm -c $T/start.bin -i $T/steps.shard -x 600 --per-device-train-batch-size 4 -l 1e-3 "
            "--micro-tokens 64",
            (const int[]){2}, 1);
    /* a state is also a reward model */
    sh("./evaluate --reward-model $T/parts.bin.state -i $T/steps.shard");
}

/* ---- scores ---------------------------------------------------------------------------------------------------- */

static json_t *evaluated(const char *command) {
    run(0, command);
    return json_line_of(out, 0);
}

static void scores_are_normalised(void **state) {
    (void)state;
    sh("./train_rm -c $T/start.bin -i $T/pairs.shard -j $T/held.shard -x 30 --per-device-train-batch-size 32 "
       "-l 3e-3 -o $T/val.bin --metrics $T/val.jsonl");
    assert_holds(said, "held.shard: normalised to 0 and 1");
    sh("./train_rm -c $T/start.bin -i $T/pairs.shard -x 30 --per-device-train-batch-size 32 -l 3e-3 -o $T/own.bin "
       "--normalize $T/margins.shard");
    sh("./train_rm -c $T/start.bin -i $T/pairs.shard -x 30 --per-device-train-batch-size 32 -l 3e-3 -o $T/raw.bin "
       "--normalize none");
    json_t *val = evaluated("./evaluate --reward-model $T/val.bin -i $T/held.shard"),
           *own = evaluated("./evaluate --reward-model $T/own.bin -i $T/margins.shard"),
           *raw = evaluated("./evaluate --reward-model $T/raw.bin -i $T/held.shard");
    assert_near(json_number_of(val, "mean_reward"), 0, 1e-5);
    assert_near(json_number_of(val, "reward_deviation"), 1, 1e-5);
    assert_near(json_number_of(own, "mean_reward"), 0, 1e-5);
    assert_near(json_number_of(own, "reward_deviation"), 1, 1e-5);
    assert_near(json_number_of(raw, "mean_reward"), metric("val.jsonl", -1, "eval_mean_reward"), 1e-5);
    assert_true(fabs(json_number_of(raw, "reward_deviation") - 1) > 1e-3);
    /* the trainer and evaluate agree; normalisation changes neither accuracy nor probabilities */
    assert_near(json_number_of(val, "accuracy"), metric("val.jsonl", -1, "eval_accuracy"), 1e-12);
    assert_near(json_number_of(raw, "margin"), metric("val.jsonl", -1, "eval_margin"), 1e-5);
    assert_near(json_number_of(val, "ece"), metric("val.jsonl", -1, "eval_ece"), 1e-4);
    assert_near(json_number_of(val, "ece"), json_number_of(raw, "ece"), 1e-4);
    assert_near(json_number_of(val, "log_loss"), metric("val.jsonl", -1, "eval_loss"), 1e-5);
    assert_int_equal(json_array_size(json_object_get(val, "calibration")), CALIBRATION_BINS);
    double pairs = 0;
    for (int i = 0; i < CALIBRATION_BINS; i++)
        pairs += json_number_of(json_array_get(json_object_get(val, "calibration"), (size_t)i), "count");
    assert_near(pairs, 300, 0);
    assert_holds(said, "expected calibration error");
    json_decref(val), json_decref(own), json_decref(raw);
    /* a Bradley-Terry model ranks labelled answers, but has no threshold */
    json_t *ranks = evaluated("./evaluate --reward-model $T/val.bin -i $T/held_answers.shard --max-prompts 200");
    assert_true(json_number_of(ranks, "auc") > 0.9 && json_is_null(json_object_get(ranks, "accuracy")));
    assert_int_equal(json_number_of(ranks, "records"), 200);
    json_decref(ranks);
}

static void scores_of_items(void **state) {
    (void)state;
    Error e;
    RewardModel rm;
    Scorer s = scorer_open("val.bin");
    RewardItem item[30];
    float score[30];
    static const int32_t prompt[3][3] = {{'a', 'b', ':'}, {'c', 'd', ':'}, {'a', 'b', ':'}};
    static const int32_t answer[] = {'a', 'b', 'c', 'a', 'd', 'a', 'e', MODELS_EOS};
    if (!reward_model_open(&rm, files_path("val.bin"), backend_cpu(), models_device, 16, &e)) fail_msg("%s", e.text);
    assert_int_equal(rm.batch.rows_max, 16);
    for (int i = 0; i < 30; i++) item[i] = (RewardItem){prompt[i / 10], answer, 3, i % 9};
    if (!reward_model_score(&rm, item, 30, score, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < 30; i++) {
        const double raw = head_at(&s, item[i].prompt, 3, answer, item[i].completion_len, 2 + item[i].completion_len);
        assert_near(score[i], (raw - rm.note.mean) / rm.note.deviation, 1e-4);
    }
    assert_true(rm.rows < 30 * 3 + 111); /* fewer than all prompts and answers: answers in one batch share a prompt */
    static int32_t many[46];
    item[0] = (RewardItem){prompt[0], many, 3, 46};
    assert_false(reward_model_score(&rm, item, 1, score, &e));
    assert_holds(e.text, "val.bin: a completion of 46 tokens after a prompt of 3 does not fit its context of 48");
    item[0].completion_len = 45; /* longer than a batch, which grows */
    assert_true(reward_model_score(&rm, item, 1, score, &e));
    assert_near(score[0], (head_at(&s, prompt[0], 3, many, 45, 47) - rm.note.mean) / rm.note.deviation, 1e-4);
    many[7] = MODELS_VOCAB;
    assert_false(reward_model_score(&rm, item, 1, score, &e));
    assert_holds(e.text, "token 260 is outside its vocabulary of 260");
    FitSide policy = {.name = "policy", .vocab = 261};
    assert_false(reward_model_fits(&rm, &policy, 0, NULL, &e));
    assert_holds(e.text, "its vocabulary of 260 does not fit policy's 261");
    policy = fit_model("policy", &rm.model.config, &rm.file);
    assert_true(reward_model_fits(&rm, &policy, 48, NULL, &e));
    assert_false(reward_model_fits(&rm, &policy, 49, NULL, &e));
    assert_holds(e.text, "its context of 48 is shorter than the longest prompt with its completion, 49");
    reward_model_close(&rm), scorer_close(&s);
}

/* The steps of an answer are located, and their probabilities are aggregated. */
static void scores_of_steps(void **state) {
    (void)state;
    Error e;
    RewardModel rm;
    sh("./train_rm --kind prm -c $T/start.bin -i $T/steps.shard -o $T/prm.bin -x 20 "
       "--per-device-train-batch-size 20 -l 1e-3");
    Scorer s = scorer_open("prm.bin");
    static const int32_t prompt[] = {'1', '+', '2', '+', '3', '='};
    static const struct {
        const char *text;
        int ends[4]; /* the positions at which steps end in the scored answer; -1: no more */
        bool stops;
    } cases[] = {{"1+2=3\n3+3=6\n", {5, 11, -1}, false},
                 {"1+2=3\n3+3=6\n", {5, 11, -1}, true},      /* the stop token is not a step */
                 {"1+2=3\n3+3=6", {5, 11, -1}, true},        /* an end is appended to the last step */
                 {"1+2=3\n\n\n3+3=6\n", {7, 13, -1}, false}, /* one end, not three */
                 {"6", {1, -1}, true},
                 {"", {0, -1}, true},
                 {"", {0, -1}, false}};
    if (!reward_model_open(&rm, files_path("prm.bin"), backend_cpu(), models_device, 64, &e)) fail_msg("%s", e.text);
    assert_int_equal(rm.note.step_token, '\n');
    assert_true(rm.aggregation == PRM_MIN);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t ids[32], scored[32];
        int n = 0, m = 0;
        for (const char *c = cases[i].text; *c; c++) ids[n++] = scored[m++] = *c;
        if (cases[i].stops) ids[n++] = MODELS_EOS;
        if (!m || scored[m - 1] != '\n') scored[m++] = '\n';
        double want[3] = {1, 1, 1};
        for (int k = 0; cases[i].ends[k] >= 0; k++) {
            const double v = head_at(&s, prompt, 6, scored, m, 6 + cases[i].ends[k]), p = 1 / (1 + exp(-v));
            want[PRM_MIN] = fmin(want[PRM_MIN], p);
            want[PRM_PRODUCT] *= p;
            want[PRM_LAST] = p;
        }
        for (int how = PRM_MIN; how <= PRM_LAST; how++) {
            float score;
            const RewardItem item = {prompt, ids, 6, n};
            rm.aggregation = (PrmAggregation)how;
            if (!reward_model_score(&rm, &item, 1, &score, &e)) fail_msg("%s", e.text);
            assert_near(score, want[how], 1e-6);
        }
    }
    reward_model_close(&rm), scorer_close(&s);
    json_t *figures = evaluated("./evaluate --reward-model $T/prm.bin -i $T/steps.shard --prm-aggregation product");
    assert_int_equal(json_number_of(figures, "steps"), 120);
    assert_true(json_is_number(json_object_get(figures, "solution_accuracy")));
    json_decref(figures);
    refused(1, "./evaluate --reward-model $T/val.bin -i $T/steps.shard", "scored by a process reward model");
}

/* ---- best of n ------------------------------------------------------------------------------------------------- */

/* The sample with the largest reward is right as often as best@n reports; weighted@n weighs the votes. */
static void best_of_n(void **state) {
    (void)state;
    enum { PROMPTS = 30, SAMPLES = 5 };
    FILE *f = fopen(files_path("tasks.jsonl"), "w");
    for (int i = 0; i < PROMPTS; i++)
        fprintf(f, "{\"prompt\":\"%d+1=\",\"answer\":\"%d\",\"task\":\"add\"}\n", i % 10, i % 3);
    assert_int_equal(fclose(f), 0);
    f = fopen(files_path("guess.jsonl"), "w");
    for (int i = 0; i < 300; i++) fprintf(f, "{\"prompt\":\"%d+1=\",\"completion\":\"%d\"}\n", i % 10, i / 10 % 4);
    assert_int_equal(fclose(f), 0);
    sh("data/make_shard --quiet -i $T/tasks.jsonl -o $T/tasks.shard && data/make_shard --quiet -i $T/guess.jsonl "
       "-o $T/guess.shard");
    sh("./train_sft " TINY "-i $T/guess.shard -o $T/guess.bin -x 60 -l 0.01 --batch-tokens 512");
    json_t *got =
        evaluated("./evaluate -c $T/guess.bin --reward-model $T/val.bin -i $T/tasks.shard --num-samples 5 -g 4 "
                  "--completions $T/said.jsonl");
    Error e;
    RewardModel rm;
    if (!reward_model_open(&rm, files_path("val.bin"), backend_cpu(), models_device, 64, &e)) fail_msg("%s", e.text);
    char *text = text_of(files_path("said.jsonl"));
    double best = 0, weighted = 0, reward = 0, right[SAMPLES], score[SAMPLES], weight[SAMPLES];
    int number[SAMPLES], seen = 0;
    for (int i = 0; i < lines_of(text); i++) {
        json_t *row = json_line_of(text, i);
        const json_t *sample = json_object_get(row, "sample");
        if (json_is_integer(sample)) {
            const int k = (int)json_integer_value(sample);
            score[k] = json_number_of(row, "reward");
            right[k] = json_is_true(json_object_get(row, "right"));
            number[k] = atoi(json_text_of(row, "completion"));
            weight[k] = 1 / (1 + exp(-score[k]));
            reward += score[k] / (PROMPTS * SAMPLES);
            seen++;
            if (k == SAMPLES - 1) {
                int first = 0;
                double most = -1, good = 0, votes;
                for (int j = 1; j < SAMPLES; j++) first = score[j] > score[first] ? j : first;
                for (int j = 0; j < SAMPLES; j++) {
                    votes = 0;
                    for (int h = 0; h < SAMPLES; h++) votes += number[h] == number[j] ? weight[h] : 0;
                    if (votes > most + 1e-9) {
                        most = votes;
                        good = right[j];
                    }
                }
                best += right[first] / PROMPTS;
                weighted += good / PROMPTS;
            }
        }
        json_decref(row);
    }
    assert_int_equal(seen, PROMPTS * SAMPLES);
    assert_near(json_number_of(got, "best@5"), best, 1e-9);
    assert_near(json_number_of(got, "weighted@5"), weighted, 1e-9);
    assert_near(json_number_of(got, "reward"), reward, 1e-6);
    assert_near(json_number_of(got, "weighted@1"), json_number_of(got, "pass@1"), 1e-9);
    assert_holds(said, "weighted@k");
    free(text), json_decref(got), reward_model_close(&rm);
    /* right if the votes are weighted, wrong if they are not */
    char *const answers[] = {"5", "5", "6", ""};
    const double right_ones[] = {0, 0, 1, 1}, heavy[] = {0.1, 0.2, 0.5, 1}, nothing[] = {0, 0, 0, 0};
    assert_near(weighted_right(answers, right_ones, NULL, 4), 0, 0);
    assert_near(weighted_right(answers, right_ones, heavy, 4), 1, 0);
    assert_near(weighted_right(answers, right_ones, nothing, 4), 0, 0);
    assert_near(votes_at_k(answers, right_ones, heavy, 4, 2), 0.5, 0);
    /* the process model can score samples, too */
    sh("./evaluate -c $T/guess.bin --reward-model $T/prm.bin --prm-aggregation last -i $T/tasks.shard "
       "--num-samples 2 -g 4");
}

static void pipes(void **state) {
    (void)state;
    sh("./train_rm -c $T/start.bin -i - -o - -x 3 --per-device-train-batch-size 8 < $T/pairs.shard 2>$T/.log "
       "| ./evaluate --reward-model - -i $T/held.shard");
    assert_holds(out, "\"model\":\"standard input\"");
    sh("./train_rm -c $T/start.bin -i $T/pairs.shard -o $T/x.bin.zst -x 3 --per-device-train-batch-size 8 "
       "&& ./evaluate --reward-model $T/x.bin.zst -i - < $T/held.shard");
    /* a model without the notes counts as a Bradley-Terry model that is not normalised */
    Model m;
    ModelFile f;
    Error e;
    assert_true(
        model_load(&m, &f, files_path("val.bin"), NULL, true, backend_cpu(), models_device, false, 0, NULL, &e));
    free(f.reward);
    f.reward = NULL;
    assert_true(model_save(&m, &f, files_path("bare.bin"), false, NULL, NULL, &e));
    json_t *bare = evaluated("./evaluate --reward-model $T/bare.bin -i $T/held.shard");
    assert_near(json_number_of(bare, "margin"), metric("val.jsonl", -1, "eval_margin"), 1e-5);
    json_decref(bare);
    f.reward = xstrdup("{\"kind\":\"bt\"}");
    assert_true(model_save(&m, &f, files_path("bad.bin"), false, NULL, NULL, &e));
    refused(1, "./evaluate --reward-model $T/bad.bin -i $T/held.shard", "bad.bin: invalid reward normalisation");
    model_free(&m), model_file_free(&f);
}

/* ---- labelled answers, packed ---------------------------------------------------------------------------------- */

static void examples(void **state) {
    (void)state;
    Error e;
    Labelled l;
    put("few.jsonl", "{\"prompt\":\"ab\",\"completion\":\"xyz\",\"label\":true}\n"
                     "{\"prompt\":\"abcdef\",\"completion\":\"x\",\"label\":true}\n"
                     "{\"prompt\":\"a\",\"completion\":\"\",\"label\":false}\n");
    sh("data/make_shard --quiet -i $T/few.jsonl -o $T/few.shard");
    if (!labelled_open(&l, files_path("few.shard"), RECORD_UNPAIRED, false, &e)) fail_msg("%s", e.text);
    if (!labelled_fit(&l, 5, FIT_TRUNCATE, &e)) fail_msg("%s", e.text);
    assert_true(l.count == 2 && l.dropped == 1 && l.truncated == 1 && labelled_longest(&l, true) == 5);
    const Example *p = &l.examples.example[0], *q = &l.examples.example[1];
    assert_true(p->prompt_len == 2 && p->completion_len == 3 && p->labels == 1 && p->label[0] == 1);
    assert_true(q->prompt_len == 1 && q->completion_len == 1 && q->completion[0] == MODELS_EOS && q->label[0] == 0);
    Batch b = batch_new(8, 8, 8);
    example_pack(&b, p); /* the last token needs no row */
    assert_true(b.rows == 4 && b.targets == 3 && b.segments == 2);
    for (int i = 0; i < 3; i++) assert_true(b.target_row[i] == 1 + i && b.target_token[i] == 'x' + i);
    batch_free(&b), labelled_close(&l);
    /* left out, not truncated: a truncated completion would deserve another label */
    if (!labelled_open(&l, files_path("few.shard"), RECORD_UNPAIRED, false, &e)) fail_msg("%s", e.text);
    if (!labelled_fit(&l, 5, FIT_DROP, &e)) fail_msg("%s", e.text);
    assert_true(l.count == 1 && l.dropped == 2 && l.truncated == 0);
    assert_false(labelled_fit(&l, 1, FIT_DROP, &e));
    assert_holds(e.text, "few.shard: no record is left: none of 3 fits into 1 tokens");
    labelled_close(&l);
    if (!labelled_open(&l, files_path("steps.shard"), RECORD_STEP, false, &e)) fail_msg("%s", e.text);
    p = &l.examples.example[0];
    b = batch_new(64, 8, 8);
    example_pack_scores(&b, p); /* one target per label, on the row of its token */
    assert_true(b.rows == p->prompt_len + p->completion_len && b.targets == p->labels && b.segments == 2);
    for (int32_t k = 0; k < p->labels; k++) assert_true(b.target_row[k] == p->prompt_len + p->at[k]);
    assert_true(b.positions[b.rows - 1] == b.rows - 1);
    batch_free(&b);
    if (!labelled_fit(&l, 13, FIT_DROP, &e)) fail_msg("%s", e.text);
    for (int64_t i = 0; i < l.count; i++) { /* the steps that fit keep their labels */
        p = &l.examples.example[i];
        for (int32_t k = 0; k < p->labels; k++) assert_true(p->at[k] < p->completion_len);
        assert_true(p->prompt_len + p->completion_len <= 13);
    }
    assert_true(l.truncated > 0);
    labelled_close(&l);
    assert_false(labelled_open(&l, files_path("few.shard"), RECORD_STEP, false, &e));
    assert_holds(e.text, "contains unpaired records, expected step records");
}

/* ---- bad input ------------------------------------------------------------------------------------------------- */

/* Pairs and answers that are too long are dropped; a solution loses its last steps. */
static void long_records(void **state) {
    (void)state;
    put("long.jsonl", "{\"prompt\":\"ab:\",\"chosen\":\"aaaaaaaaaa\",\"rejected\":\"b\"}\n"
                      "{\"prompt\":\"ab:\",\"chosen\":\"aa\",\"rejected\":\"b\"}\n");
    sh("data/make_shard --quiet -i $T/long.jsonl -o $T/long.shard");
    sh("./train_rm -c $T/start.bin -i $T/long.shard -o $T/x.bin -x 1 --max-length 8 --metrics $T/long.jsonl.m");
    assert_holds(said, "1 of 2 records are left out");
    refused(1, "./train_rm -c $T/start.bin -i $T/long.shard -o $T/kept -x 1 --max-length 5",
            "long.shard: no record is left: none of 2 fits into 5 tokens");
    put("long.jsonl", "{\"prompt\":\"1+1=\",\"completions\":[\"1\",\"2222222222\"],\"labels\":[true,false]}\n");
    sh("data/make_shard --quiet -i $T/long.jsonl -o $T/long.shard");
    sh("./train_rm --kind prm -c $T/start.bin -i $T/long.shard -o $T/x.bin -x 1 --max-length 8");
    assert_holds(said, "1 solutions are longer than 8 tokens and lose their last steps");
    assert_holds(said, "all 1 labels are good");
    put("long.jsonl", "{\"prompt\":\"1+1=\",\"completions\":[\"1\",\"2\"],\"labels\":[true,false]}\n");
    sh("data/make_shard --quiet -i $T/long.jsonl -o $T/long.shard --step-separator ''");
    sh("./train_rm --kind prm -c $T/start.bin -i $T/long.shard -o $T/x.bin -x 1");
    assert_holds(said, "steps end in different tokens");
}

static void bad_input(void **state) {
    (void)state;
    Error e;
#define RM "./train_rm -c $T/start.bin -o $T/kept -x 1 "
    refused(2, "./train_rm -c $T/start.bin -o $T/kept", "-i/--input is required");
    refused(2, "./train_rm -c $T/start.bin -i $T/pairs.shard", "-o/--output is required");
    refused(2, "./train_rm -i $T/pairs.shard -o $T/kept", "-c/--checkpoint is required");
    refused(2, RM "-i $T/pairs.shard word", "word: unexpected argument");
    refused(2, RM "-i $T/pairs.shard --kind gm", "is not one of bt|orm|prm");
    refused(2, RM "-i $T/pairs.shard --label-smoothing 0.5", "label-smoothing");
    refused(2, RM "-i $T/pairs.shard --per-device-train-batch-size 0", "per-device-train-batch-size");
    refused(2, RM "-i $T/pairs.shard --center-rewards-coefficient -1", "center-rewards-coefficient");
    refused(2, RM "-i $T/pairs.shard --train-on-last-step-only", "used only with --kind prm");
    refused(2, RM "-i $T/answers.shard --kind orm --center-rewards-coefficient 0.1", "used only with --kind bt");
    refused(2, RM "-i $T/answers.shard --kind orm --no-use-margin", "used only with --kind bt");
    refused(2, RM "-i $T/answers.shard --kind orm --no-prefix-sharing", "used only with --kind bt");
    refused(2, RM "-i $T/steps.shard --kind prm --normalize none", "--normalize: a process model's scores");
    refused(2, RM "-i - -j - < /dev/null", "only one input can be standard input");
    refused(1, RM "-i $T/answers.shard", "answers.shard: contains unpaired records, expected preference records");
    refused(1, RM "-i $T/chat.shard --kind orm", "chat.shard: contains chat records, expected unpaired records");
    refused(2, RM "-i $T/answers.shard --kind orm --loss-type pairwise", "used only with --kind bt");
    refused(2, RM "-i $T/four.shard --loss-type plackett_luce --label-smoothing 0.1", "not used by --loss-type");
    refused(1, RM "-i $T/four.shard --soft-labels", "20 records of ");
    refused(1, "./train_dpo -c $T/start.bin -i $T/four.shard -o $T/kept",
            "four.shard: 20 of 20 records rank more than two completions, expected pairs");
    refused(1, "./train_dpo -c $T/start.bin -i $T/four.shard -o $T/kept --loss-type kto",
            "four.shard: record 0 ranks 4 completions, expected pairs");
    refused(1, "./evaluate -i $T/four.shard --judge $T/guess.bin",
            "record 0 ranks 4 completions; a judge labels pairs");
    refused(1, RM "-i $T/pairs.shard --kind prm", "pairs.shard: contains preference records, expected step records");
    refused(1, RM "-i $T/pairs.shard -j $T/answers.shard", "contains unpaired records, expected preference records");
    refused(1, RM "-i $T/pairs.shard --normalize $T/steps.shard", "contains step records");
    refused(1, RM "-i $T/none", "none: cannot open");
    refused(1, RM "-i $T/start.bin", "this is a checkpoint, expected a record shard");
    refused(1, "head -c 2000 $T/pairs.shard | " RM "-i -", "standard input: ");
    refused(1, "./train_rm -c $T/pairs.shard -i $T/pairs.shard -o $T/kept", "this is a record shard");
    refused(1, "./train_rm -c $T/start.bin -i $T/pairs.shard -o $T/no/file -x 1", "no/file");
    refused(1, RM "-i $T/pairs.shard --resume $T/start.bin", "it is a model, not a training state");
    ShardWriter w = models_shard("wide.shard", RECORD_STEP, "plain");
    uint8_t mask[] = {0, 244};
    assert_true(shard_add(&w, &(Record){.tokens = (int32_t[]){1, 2}, .count = 2, .prompt = 1, .mask = mask}, &e));
    models_commit(&w);
    refused(1, RM "--kind prm -i $T/wide.shard", "wide.shard: record 0 has a label that is neither");
    w = models_shard("empty.shard", RECORD_PREFERENCE, "plain");
    models_commit(&w);
    refused(1, RM "-i $T/empty.shard", "empty.shard: no pair is left to train on");
    /* evaluate */
    refused(1, "./evaluate --reward-model $T/guess.bin -i $T/held.shard", "guess.bin: it has no score head");
    refused(1, "./evaluate --reward-model $T/val.bin -i $T/empty.shard", "the shard is empty");
    refused(1, "./evaluate -c $T/guess.bin -i $T/held.shard",
            "expected chat or prompt; a reward model (--reward-model) can score");
    refused(2, "./evaluate -c $T/guess.bin --reward-model $T/val.bin -i $T/held.shard",
            "is scored by --reward-model only");
    refused(2, "./evaluate --reward-model $T/val.bin -i $T/tasks.shard", "-c/--checkpoint is required");
    refused(2, "./evaluate -c $T/guess.bin --reward-model $T/val.bin -i $T/chat.shard", "not chat");
    refused(2, "./evaluate -c $T/guess.bin --reward-model $T/val.bin --reward verify -i $T/tasks.shard",
            "give only one of them");
    refused(2, "./evaluate --reward-model $T/val.bin --prm-aggregation last -i $T/held.shard",
            "is not a process reward model");
    refused(2, "./evaluate -c $T/guess.bin --prm-aggregation last -i $T/tasks.shard",
            "--prm-aggregation: used only with --reward-model");
    refused(2, "./evaluate -c $T/guess.bin --reward-model $T/val.bin --num-samples 0 -i $T/tasks.shard",
            "no samples to choose from");
    /* make_prefs */
    refused(2, "data/make_prefs --rule colour", "expected char, char=x");
    refused(2, "data/make_prefs --min-length 5 --max-length 4", "--min-length is above --max-length");
    refused(2, "data/make_prefs --format step", "give --rule sum");
    refused(2, "data/make_prefs --format chat --flip 0.1", "--format chat and prompt have no labels");
    refused(2, "data/make_prefs --format unpaired --margin", "--margin requires --format preference");
    refused(2, "data/make_prefs --num-completions 3", "requires --format ranking");
    refused(2, "data/make_prefs --format ranking --flip 0.1", "a ranking is not flipped");
    refused(1, "data/make_prefs --format ranking --rule sum --num-completions 3", "record 0: 10000 draws gave no");
    refused(2, "data/make_prefs --steps", "--steps requires --rule sum");
    refused(1, "data/make_prefs --rule repeats --max-length 1 -o $T/kept", "record 0: 10000 draws gave no");
}

/* ---- data/make_prefs ------------------------------------------------------------------------------------------- */

/* Without a temperature scores fall from the first completion to the last. With one, the best of three is first as often as
 * its exp(score / T) says: the deviation of that count from its expectation is within four standard deviations. */
static void rankings_follow_the_rule(const Gold *g) {
    double first = 0, expected = 0, variance = 0;
    sh("data/make_prefs --rule char:1,length:-0.5 --count 400 --format ranking --num-completions 3 -o $T/p.jsonl && "
       "data/make_prefs --rule char:1,length:-0.5 --count 400 --format ranking --num-completions 3 --temperature 2 "
       "-o $T/t.jsonl");
    for (int noisy = 0; noisy < 2; noisy++) {
        char *text = text_of(files_path(noisy ? "t.jsonl" : "p.jsonl"));
        for (int i = 0; i < 400; i++) {
            json_t *row = json_line_of(text, i), *all = json_object_get(row, "completions");
            double score[3], sum = 0, most = -INFINITY;
            assert_int_equal(json_array_size(all), 3);
            for (size_t k = 0; k < 3; k++) {
                score[k] = gold_score(g, json_text_of(row, "prompt"), json_string_value(json_array_get(all, k)));
                sum += exp(score[k] / 2);
                most = fmax(most, score[k]);
                if (!noisy && k) assert_true(score[k] < score[k - 1]);
            }
            const double p = exp(most / 2) / sum;
            if (noisy) first += score[0] == most, expected += p, variance += p * (1 - p);
            json_decref(row);
        }
        free(text);
    }
    assert_near(first, expected, 4 * sqrt(variance));
}

/* The chosen answer scores higher, except for the flipped fraction; no prompt is in both splits. */
static void preferences_follow_the_rule(void **state) {
    (void)state;
    Error e;
    Gold g;
    assert_true(gold_parse(&g, "char:1,length:-0.5", &e));
    sh("data/make_prefs --rule char:1,length:-0.5 --count 1000 --flip 0.25 --margin -o $T/p.jsonl");
    char *text = text_of(files_path("p.jsonl"));
    double flips = 0;
    for (int i = 0; i < 1000; i++) {
        json_t *row = json_line_of(text, i);
        const char *prompt = json_text_of(row, "prompt");
        const double gap =
            gold_score(&g, prompt, json_text_of(row, "chosen")) - gold_score(&g, prompt, json_text_of(row, "rejected"));
        assert_true(gap != 0);
        assert_near(fabs(gap), json_number_of(row, "margin"), 1e-12);
        flips += gap < 0;
        json_decref(row);
    }
    free(text);
    assert_near(flips / 1000, 0.25, 0.06);
    rankings_follow_the_rule(&g);
    sh("data/make_prefs --count 500 --format prompt | sort -u > $T/a && data/make_prefs --count 500 --format prompt "
       "--split heldout | sort -u > "
       "$T/b && comm -12 $T/a $T/b > $T/both && test -s $T/a && test -s $T/b && test ! -s $T/both");
    sh("data/make_prefs --count 50 --seed 3 -o $T/a && data/make_prefs --count 50 --seed 3 -o $T/b && cmp $T/a $T/b "
       "&& data/make_prefs --count 50 --seed 4 -o $T/b && ! cmp -s $T/a $T/b");
    sh("data/make_prefs --rule sum --format chat --steps --count 20 | data/make_prefs --score --rule sum");
    assert_int_equal(lines_of(out), 20);
    run(0, "echo '{}' | data/make_prefs --score");
    assert_string_equal(out, "null\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(pairs_loss),
                                       cmocka_unit_test(rankings_loss),
                                       cmocka_unit_test(steps_loss),
                                       cmocka_unit_test(learns_a_rule),
                                       cmocka_unit_test(noise_costs),
                                       cmocka_unit_test(packing_changes_nothing),
                                       cmocka_unit_test(scores_are_normalised),
                                       cmocka_unit_test(scores_of_items),
                                       cmocka_unit_test(scores_of_steps),
                                       cmocka_unit_test(resumes_bit_for_bit),
                                       cmocka_unit_test(best_of_n),
                                       cmocka_unit_test(pipes),
                                       cmocka_unit_test(long_records),
                                       cmocka_unit_test(examples),
                                       cmocka_unit_test(bad_input),
                                       cmocka_unit_test(preferences_follow_the_rule)};
    return cmocka_run_group_tests_name("rm", tests, setup, models_teardown);
}
