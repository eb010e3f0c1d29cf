/* train_rm.c - reward models: scores of completions, learned from preferences, outcomes or steps.
 *
 *   --kind bt    preference shard   L = mean -log sigma(s_chosen - s_rejected - margin)
 *                                     + c mean (s_chosen + s_rejected)^2
 *                                   with --soft-labels the cross-entropy with the probabilities sigma(margin);
 *                                   of a ranking of K completions the mean over its K (K-1) / 2 pairs, or with
 *                                   --loss-type plackett_luce -log of the probability of the whole order
 *   --kind orm   unpaired shard     L = mean -log sigma(+-s)      s at the last token: is the completion right?
 *   --kind prm   step shard         L = mean -log sigma(+-s_k)    s_k at the last token of step k: is it right so far?
 *
 * s is a linear head on the output of the final layernorm (losses: llmc/loss/reward.h). One optimizer step takes
 * --per-device-train-batch-size rankings or completions, packed without padding into micro-batches of --micro-tokens.
 * The completions of a ranking share one copy of their prompt, unless --no-prefix-sharing is given. A pair is a ranking
 * of two. Packing and sharing change the result only by rounding. At the end, the mean and the variance of s on a shard
 * are stored in the checkpoint (llmc/reward/reward_model.h); programs that score with it normalise s to mean 0 and
 * variance 1.
 *
 *     ./train_rm -c sft.bin -i prefs.shard -j held_out.shard -o rm.bin
 */
#include "llmc/base/clock.h"            /* clock_seconds */
#include "llmc/base/error.h"            /* xcalloc, warn, die, Error, ... */
#include "llmc/base/options.h"          /* OPTION_FLAG, OPTION_INT, OPTION_GROUP, option_given, ... */
#include "llmc/base/program.h"          /* program_start */
#include "llmc/base/text.h"             /* TextBuffer, text_format, text_free */
#include "llmc/dist/dist.h"             /* DIST_FIELDS, dist_add, dist_sum, Dist, ... */
#include "llmc/dist/grads.h"            /* dist_grads_begin */
#include "llmc/loss/reward.h"           /* RewardLoss, RankingBatch, loss_binary, loss_ranking, ... */
#include "llmc/model/batch.h"           /* Batch, batch_pairs */
#include "llmc/model/micro_plan.h"      /* MicroPlan, micro_plan_add, micro_plan_begin, micro_plan_free */
#include "llmc/model/pack.h"            /* batch_clear, batch_free, batch_new */
#include "llmc/model/transformer.h"     /* ModelOutput, model_forward, model_backward, model_flops */
#include "llmc/model/workspace.h"       /* Workspace, workspace_free */
#include "llmc/records/eval_sets.h"     /* EvalSets, eval_set, eval_set_size, eval_sets_free */
#include "llmc/records/examples.h"      /* Example, example_pack_scores, example_size */
#include "llmc/records/inputs.h"        /* inputs_close, Inputs, inputs_add */
#include "llmc/records/labelled.h"      /* Labelled, labelled_positions, labelled_rows, FIT_DROP, ... */
#include "llmc/records/mix.h"           /* Mix, mix_epochs, mix_free, mix_next, ... */
#include "llmc/records/mix_options.h"   /* MIXING_OPTIONS, MixingOptions, mixing_defaults */
#include "llmc/records/ranked.h"        /* Ranked, ranked_pack_scores, ranked_pair, ranked_size */
#include "llmc/records/shard.h"         /* step_share, RECORD_PREFERENCE, RECORD_STEP, RECORD_UNPAIRED, ... */
#include "llmc/report/metrics.h"        /* Metrics, metrics_phase, metrics_set, metrics_set_of, ... */
#include "llmc/report/run_facts.h"      /* RUN_EVALUATION, RUN_SAMPLES, RunPhase */
#include "llmc/reward/calibration.h"    /* calibration_error, Calibration, calibration_add_label, ... */
#include "llmc/reward/reward_model.h"   /* REWARD_MODEL_BT, REWARD_MODEL_PRM, REWARD_MODEL_CHOICES, ... */
#include "llmc/train/mixing.h"          /* mixing_begin, mixing_check, mixing_inputs, mixing_log, ... */
#include "llmc/train/trainer.h"         /* Trainer, TrainerPause, trainer_go_on, trainer_pause, ... */
#include "llmc/train/trainer_options.h" /* TRAINER_EVALUATION_OPTIONS, TRAINER_LORA_OPTIONS, ... */

static struct {
    TrainerOptions t;
    RewardLoss loss;
    OptionList input, val;
    MixingOptions mix;
    const char *normalize;
    int64_t batch, max_length, eval_steps;
    double epochs;
    bool margin, sharing, last_step, eval_on_start;
    int kind;
} o;

static const Option options[] = {
    // clang-format off
    OPTION_GROUP("Data"),
    OPTION_LIST  ("input",                       'i', &o.input,      "FILE",
                  "preference, unpaired or step shard, depending on --kind, or a pattern; may be repeated, with a weight "
                  "as FILE:3"),
    MIXING_OPTIONS(o.mix),
    OPTION_LIST  ("val",                         'j', &o.val,        "FILE",
                  "held-out shard of the same kind, for accuracy, margin and calibration"),
    OPTION_CHOICE("kind",                        0,   &o.kind,       REWARD_MODEL_CHOICES,
                  "Bradley-Terry on pairs, outcome (labelled completions), process (labelled steps)"),
    OPTION_INT   ("per-device-train-batch-size", 'd', &o.batch,      1, 1 << 24,
                  "pairs, rankings or completions per optimizer step"),
    OPTION_INT   ("max-length",                  0,   &o.max_length, 0, 1 << 20,
                  "leave out longer records (prm: drop their last steps); 0 uses the model's context"),
    OPTION_REAL  ("num-train-epochs",            0,   &o.epochs,     0.001, 1e6, "passes over the shard"),
    OPTION_INT   ("max-steps",                   'x', &o.t.steps,    1, 1e9,
                  "number of optimizer steps (default: those of --num-train-epochs)"),
    OPTION_FLAG  ("prefix-sharing",              0,   &o.sharing,
                  "process the prompt of a pair or ranking once for all its completions"),
    OPTION_GROUP("Loss"),
    OPTION_CHOICE("loss-type",                0, &o.loss.ranking,         RANKING_LOSS_CHOICES,
                "bt: loss of a ranking of more than two completions: the mean over its pairs, or -log of the probability of "
                "its order; a pair has the same loss in both"),
    OPTION_FLAG("use-margin",                 0, &o.margin,
                "bt: subtract each pair's margin from its score difference"),
    OPTION_FLAG("soft-labels",                0, &o.loss.soft,
                "bt: each pair's margin is the log-odds of its label (data/pick --pairs p), and the loss the cross-entropy "
                "with that probability"),
    OPTION_REAL("label-smoothing",            0, &o.loss.label_smoothing, 0, 0.499,
                "probability that a label is wrong"),
    OPTION_REAL("center-rewards-coefficient", 0, &o.loss.center,          0, 1e6,
                "bt: weight of the penalty that centres a pair's scores on 0 (0.01 is usual); 0 disables"),
    OPTION_FLAG("train-on-last-step-only",    0, &o.last_step,
                "prm: train on the last step of each solution only"),
    OPTION_TEXT("normalize",                  0, &o.normalize,            "FILE",
                "bt, orm: shard to normalise scores on, or none; --val, else --input if not given"),
    TRAINER_MODEL_OPTIONS(o.t),
    TRAINER_LORA_OPTIONS(o.t),
    TRAINER_OPTIMIZER_OPTIONS(o.t),
    TRAINER_OUTPUT_OPTIONS(o.t),
    OPTION_GROUP("Evaluation"),
    OPTION_FLAG("eval-on-start", 0, &o.eval_on_start, "evaluate on --val before the first step, too"),
    OPTION_INT("eval-steps", 0, &o.eval_steps, 1, 1e9, "evaluate on --val every N steps, and after training"),
    TRAINER_EVALUATION_OPTIONS(o.t),
    OPTION_END
    // clang-format on
};

static const OptionAbout about = {
    "-c MODEL -i SHARD -o OUT [options]",
    "Trains a reward model on preferences or rankings, on labelled completions or on labelled steps.\n\n"
    "  ./data/make_shard -i prefs.jsonl -o prefs.shard --val-fraction 0.1 --val-output held_out.shard\n"
    "  ./train_rm -c sft.bin -i prefs.shard -j held_out.shard -o rm.bin\n"
    "  ./train_rm -c sft.bin -i steps.shard -o prm.bin --kind prm\n"
    "  ./evaluate --reward-model rm.bin -i held_out.shard             accuracy, margin, calibration\n"
    "  ./evaluate -c sft.bin --reward-model rm.bin -i tasks.shard     best of n by the reward model"};

/* ---- data ------------------------------------------------------------------------------------------------------ */

static void data_open(Labelled *d, const Inputs *files) {
    Error e;
    const RecordKind kind[] = {RECORD_PREFERENCE, RECORD_UNPAIRED, RECORD_STEP}; /* in the order of --kind */
    if (!labelled_open_all(d, (const char *const *)files->path, files->count, kind[o.kind], false, &e))
        die("%s", e.text);
    labelled_drop_golds(d);
}

/* Leaves out records longer than --max-length, as TRL does. Call it once --max-length is known. */
static void data_fit(Trainer *t, Labelled *d) {
    Error e;
    trainer_check_shard(t, d->shard);
    if (!labelled_fit(d, o.max_length, FIT_DROP, &e)) die("%s", e.text);
}

/* Warns if all labels are equal: the model would learn only their frequency. */
static void check_labels(const Labelled *d) {
    int64_t good = 0, labels = 0;
    if (o.kind == REWARD_MODEL_BT) return;
    for (int64_t i = 0; i < d->count; i++)
        for (int32_t k = 0; k < d->examples.example[i].labels; k++, labels++)
            good += step_share(d->examples.example[i].label[k]) >= 0.5;
    if (labels && (!good || good == labels))
        warn("%s: all %lld labels are %s: there is nothing to distinguish", d->shard->name, (long long)labels,
             good ? "good" : "bad");
}

/* Warns of pairs without the probability of --soft-labels: a margin of 0 is that of a coin toss. Ends the program if the
 * pairs to train on all lack it, or if the shard has longer rankings. */
static void check_soft(const Labelled *d, bool trained) {
    int64_t unknown = 0;
    if (!o.loss.soft) return;
    if (d->ranked.longer)
        die("--soft-labels: %lld records of %s rank more than two completions; only pairs have probabilities",
            (long long)d->ranked.longer, d->shard->name);
    for (int64_t i = 0; i < d->count; i++) unknown += d->ranked.record[i].margin == 0;
    if (trained && unknown == d->count)
        die("--soft-labels: no pair of %s has a margin; data/pick --pairs p writes the log-odds of a judge's labels",
            d->shard->name);
    if (unknown)
        warn("--soft-labels: %lld of %lld pairs of %s have no margin: their label is taken as a coin toss",
             (long long)unknown, (long long)d->count, d->shard->name);
}

/* Keeps only the label of the last step of each solution. */
static void keep_last_steps(Labelled *d) {
    for (int64_t i = 0; i < d->count; i++) {
        Example *q = &d->examples.example[i];
        q->at += q->labels - 1;
        q->label += q->labels - 1;
        q->labels = 1;
    }
}

/* The token that ends every step, or -1. It delimits the steps of completions without labels. */
static int32_t step_token(const Labelled *d) {
    int32_t token = -1;
    for (int64_t i = 0; i < d->count; i++) {
        const Example *q = &d->examples.example[i];
        for (int32_t k = 0; k < q->labels; k++) {
            const int32_t here = q->completion[q->at[k]];
            if (token >= 0 && here != token) return -1;
            token = here;
        }
    }
    return token;
}

/* ---- a pass over records --------------------------------------------------------------------------------------- */

/* Totals of a pass over records. The parts contain doubles only, so that ranks can add them and take their maxima and
 * minima (dist.h). */
typedef struct Stats {
    struct {
        double loss, records;          /* records: rankings or labels, whose mean the loss is */
        double units, right;           /* units: pairs or labels; right: correctly ranked or classified, ties half */
        double margin;                 /* bt: s_chosen - s_rejected of all pairs */
        double scores, total, squares; /* number of scores, s, s^2 */
    } sum;
    struct {
        double score;
    } max, min;
    Calibration calibration;
} Stats;

static double accuracy(const Stats *s) { return s->sum.right / s->sum.units; }
static double mean_margin(const Stats *s) { return s->sum.margin / s->sum.units; }
static double mean_score(const Stats *s) { return s->sum.total / s->sum.scores; }

typedef struct Run {
    Trainer t;
    Workspace work;
    Batch batch;
    MicroPlan plan;
    float *score, *dscore;  /* (targets of a micro-batch) */
    float *label;           /* (targets of a micro-batch) */
    float *margin;          /* (rankings of a micro-batch) */
    int32_t *count;         /* (rankings of a micro-batch) number of completions of each */
    int64_t rankings;       /* number of rankings in the batch */
    double *cost;           /* (records of a pass) tokens of each record */
    int32_t *owner;         /* (records of a pass) rank of each record */
    int64_t *own;           /* (records of a pass) the records of this rank */
    EvalSets held;          /* the validation records */
    const Labelled *normal; /* the records that scores are normalised on; NULL: they are not */
    int32_t step;           /* token that ends a step; -1: there is no such token */
} Run;

/* Counts the pairs of a ranking of n completions. */
static void count_ranking(const float *score, int32_t n, Stats *s) {
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = i + 1; j < n; j++) {
            const double difference = (double)score[i] - score[j];
            s->sum.margin += difference;
            s->sum.right += difference > 0 ? 1 : difference == 0 ? 0.5 : 0;
            s->sum.units++;
            calibration_add_pair(&s->calibration, difference);
        }
    s->sum.records++;
}

static void count_batch(const Run *r, Stats *s) {
    for (int32_t i = 0; i < r->batch.targets; i++) {
        const double score = r->score[i];
        s->sum.scores++;
        s->sum.total += score;
        s->sum.squares += score * score;
        s->min.score = fmin(s->min.score, score);
        s->max.score = fmax(s->max.score, score);
        if (o.kind == REWARD_MODEL_BT) continue;
        s->sum.right += score == 0 ? 0.5 : (score > 0) == (r->label[i] >= 0.5f);
        s->sum.units++;
        s->sum.records++;
        calibration_add_label(&s->calibration, score, r->label[i]);
    }
    const float *score = r->score;
    for (int64_t i = 0; i < r->rankings; score += r->count[i], i++) count_ranking(score, r->count[i], s);
}

/* Adds one micro-batch's part of the loss to *s; if `train`, also its gradient. N: rankings or labels of the whole
 * step. */
static void micro_batch(Run *r, bool train, double N, Stats *s) {
    Trainer *t = &r->t;
    const Batch *b = &r->batch;
    model_forward(&t->model, &r->work, b, 1.0f, &(ModelOutput){.value = r->score});
    const RankingBatch x = {.rankings = r->rankings, .count = r->count, .score = r->score, .margin = r->margin};
    s->sum.loss += o.kind == REWARD_MODEL_BT ? loss_ranking(&o.loss, &x, N, r->dscore)
                                             : loss_binary(&o.loss, r->score, r->label, b->targets, N, r->dscore);
    if (train) model_backward(&t->model, &r->work, b, 1.0f, NULL, NULL, r->dscore);
    t->flops += model_flops(&t->model.config, b->rows, 0, batch_pairs(b), train ? 3 : 1);
    count_batch(r, s);
}

/* Distributes the records over the ranks and divides those of this rank into micro-batches. Returns the number of
 * rankings or labels of all records. */
static double plan_records(Run *r, const Labelled *d, const int64_t *records, int64_t n) {
    double N = 0;
    int64_t own = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t record = records ? records[i] : i;
        r->cost[i] = labelled_rows(d, record, o.sharing);
        N += o.kind == REWARD_MODEL_BT ? 1 : d->examples.example[record].labels;
    }
    dist_share(r->cost, n, r->t.dist.ranks, r->owner);
    micro_plan_begin(&r->plan, &r->batch, 0);
    for (int64_t i = 0; i < n; i++) {
        if (r->owner[i] != r->t.dist.rank) continue;
        const int64_t record = r->own[own++] = records ? records[i] : i;
        micro_plan_add(&r->plan, o.kind == REWARD_MODEL_BT ? ranked_size(&d->ranked.record[record], o.sharing)
                                                           : example_size(&d->examples.example[record]));
    }
    return N;
}

/* Packs this rank's records first ... end-1 with their margins or labels. */
static void pack_records(Run *r, const Labelled *d, int32_t first, int32_t end) {
    batch_clear(&r->batch);
    r->rankings = 0;
    for (int32_t i = first; i < end; i++) {
        if (o.kind == REWARD_MODEL_BT) {
            const Ranked *q = &d->ranked.record[r->own[i]];
            r->count[r->rankings] = q->count;
            r->margin[r->rankings++] = o.margin || o.loss.soft ? q->margin : 0;
            ranked_pack_scores(&r->batch, q, o.sharing);
        } else {
            const Example *x = &d->examples.example[r->own[i]];
            for (int32_t k = 0; k < x->labels; k++) r->label[r->batch.targets + k] = (float)step_share(x->label[k]);
            example_pack_scores(&r->batch, x);
        }
    }
}

/* Runs records records[0..n), or the first n in order if NULL, each on one of the ranks. */
static Stats run_records(Run *r, const Labelled *d, const int64_t *records, int64_t n, bool train) {
    Dist *ranks = &r->t.dist;
    Stats s = {.max = {-INFINITY}, .min = {INFINITY}};
    s.calibration = calibration_new(o.kind == REWARD_MODEL_BT ? 0.5 : 0);
    const double N = plan_records(r, d, records, n);
    const MicroPlan *plan = &r->plan;
    if (train) dist_grads_begin(&r->t.grads, plan->micros);
    for (int32_t m = 0; m < plan->micros; m++) {
        pack_records(r, d, plan->first[m], plan->first[m + 1]);
        micro_batch(r, train, N, &s);
    }
    dist_sum(ranks, DIST_FIELDS(s.sum));
    dist_sum(ranks, DIST_FIELDS(s.calibration.sum));
    dist_max(ranks, DIST_FIELDS(s.max));
    dist_min(ranks, DIST_FIELDS(s.min));
    return s;
}

/* Sets the metrics under TRL's names, with a prefix. */
static void set_metrics(Metrics *m, const char *prefix, const Stats *s) {
    const struct {
        const char *name;
        double value;
    } all[] = {{"accuracy", accuracy(s)},
               {"min_reward", s->min.score},
               {"mean_reward", mean_score(s)},
               {"max_reward", s->max.score},
               {"margin", mean_margin(s)}};
    char name[160];
    for (size_t i = 0; i < sizeof all / sizeof *all - (o.kind != REWARD_MODEL_BT); i++) {
        snprintf(name, sizeof name, "%s%s", prefix, all[i].name);
        metrics_set(m, name, all[i].value);
    }
}

/* Counts the tokens of the records: TRL's num_tokens has the prompt of a pair twice. */
static void count_tokens(Trainer *t, const Labelled *d, const int64_t *records, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        t->tokens += labelled_rows(d, records[i], false);
        t->trained +=
            o.kind == REWARD_MODEL_BT ? d->ranked.record[records[i]].count : d->examples.example[records[i]].labels;
    }
}

/* Sets the metrics of validation records. set: their name, or NULL for all. */
static void set_validation(Run *r, const char *set, const Stats *s) {
    TextBuffer prefix = {0};
    Metrics *m = &r->t.metrics;
    text_format(&prefix, "eval_%s%s", set ? set : "", set ? "_" : "");
    metrics_set_of(m, set, "loss", s->sum.loss);
    set_metrics(m, prefix.text, s);
    metrics_set_of(m, set, "ece", calibration_error(&s->calibration));
    text_free(&prefix);
}

static void say_validation(Run *r, const char *set, const Stats *s, double seconds) {
    char name[80] = "";
    if (set) snprintf(name, sizeof name, " | %.70s", set);
    metrics_summary(
        &r->t.metrics, "eval  step %lld%s | loss %.4f | accuracy %.1f%% | calibration error %.1f%% | %.1f s",
        (long long)r->t.step, name, s->sum.loss, 100 * accuracy(s), 100 * calibration_error(&s->calibration), seconds);
}

/* Adds the scores of one set of records to those of others. The loss becomes the mean over all rankings or labels. */
static void add_stats(Stats *all, const Stats *part) {
    const double records = all->sum.records + part->sum.records;
    const double loss = (all->sum.loss * all->sum.records + part->sum.loss * part->sum.records) / records;
    dist_add(DIST_FIELDS(all->sum), DIST_FIELDS(part->sum));
    dist_add(DIST_FIELDS(all->calibration.sum), DIST_FIELDS(part->calibration.sum));
    all->sum.loss = loss;
    all->max.score = fmax(all->max.score, part->max.score);
    all->min.score = fmin(all->min.score, part->min.score);
}

static Stats validate(Run *r, const Labelled *val) {
    const EvalSets *sets = &r->held;
    const double start = clock_seconds();
    const RunPhase phase = metrics_phase(&r->t.metrics, RUN_EVALUATION);
    Stats s = {0};
    for (int k = 0; k < sets->count; k++) {
        const double began = clock_seconds();
        const Stats part = run_records(r, val, eval_set(sets, k), eval_set_size(sets, k), false);
        if (sets->told) {
            set_validation(r, sets->name[k], &part);
            say_validation(r, sets->name[k], &part, clock_seconds() - began);
        }
        if (k) add_stats(&s, &part);
        else s = part;
    }
    set_validation(r, NULL, &s);
    say_validation(r, NULL, &s, clock_seconds() - start);
    metrics_phase(&r->t.metrics, phase);
    return s;
}

/* Shows the best and the worst completion of a ranking. */
static void show_ranking(Run *r, const Ranked *q, const char *when) {
    const Pair ends = ranked_pair(q);
    batch_clear(&r->batch);
    ranked_pack_scores(&r->batch, q, o.sharing);
    model_forward(&r->t.model, &r->work, &r->batch, 1.0f, &(ModelOutput){.value = r->score});
    trainer_show_pair(&r->t, when, &ends, (double)r->score[0], (double)r->score[q->count - 1]);
}

static void show_solution(Run *r, const Example *x, const char *when) {
    batch_clear(&r->batch);
    example_pack_scores(&r->batch, x);
    model_forward(&r->t.model, &r->work, &r->batch, 1.0f, &(ModelOutput){.value = r->score});
    trainer_show_solution(&r->t, when, x, r->score);
}

/* Shows the first records with their scores. */
static void show_records(Run *r, const Labelled *d, const char *when) {
    Trainer *t = &r->t;
    if (!trainer_records(t)) return;
    const TrainerPause pause = trainer_pause(t, RUN_SAMPLES);
    for (int64_t i = 0; i < d->count && i < TRAINER_PAIRS; i++)
        if (o.kind == REWARD_MODEL_BT) show_ranking(r, &d->ranked.record[i], when);
        else show_solution(r, &d->examples.example[i], when);
    trainer_go_on(t, pause);
}

/* ---- normalisation of the scores --------------------------------------------------------------------------------- */

/* Stores the kind of the model and the normalisation of its scores in the model's file. d: the shard on which scores
 * get mean 0 and variance 1, or NULL for no normalisation. */
static void set_note(Run *r, const Labelled *d) {
    Trainer *t = &r->t;
    RewardModelNote note = {.kind = (RewardModelKind)o.kind, .deviation = 1, .step_token = r->step};
    if (d) {
        const Stats s = run_records(r, d, NULL, d->count, false);
        const double mean = mean_score(&s), variance = s.sum.squares / s.sum.scores - mean * mean;
        if (isfinite(mean) && variance > 1e-12 * mean * mean) {
            note.mean = mean;
            note.deviation = sqrt(variance);
            metrics_line(&t->metrics, "scores have mean %.4f and standard deviation %.4f on %s: normalised to 0 and 1",
                         mean, note.deviation, d->shard->name);
        } else warn("%s: all scores are equal or not finite: they are not normalised", d->shard->name);
    }
    free(t->file.reward);
    t->file.reward = reward_model_note_write(&note);
}

/* ---- the program ----------------------------------------------------------------------------------------------- */

static void check_options(void) {
    const bool pairs = o.kind == REWARD_MODEL_BT;
    const OptionUse use[] = {
        {&o.loss.center, pairs, "used only with --kind bt"},
        {&o.loss.ranking, pairs, "used only with --kind bt"},
        {&o.margin, pairs && !o.loss.soft, "used only with --kind bt, without --soft-labels"},
        {&o.loss.soft, pairs, "used only with --kind bt"},
        {&o.loss.label_smoothing, !o.loss.soft, "not used by --soft-labels, which has a probability for each label"},
        {&o.loss.label_smoothing, o.loss.ranking != RANKING_PLACKETT_LUCE,
         "not used by --loss-type plackett_luce, whose order has no wrong labels"},
        {&o.sharing, pairs, "used only with --kind bt"},
        {&o.last_step, o.kind == REWARD_MODEL_PRM, "used only with --kind prm"},
        {&o.eval_on_start, o.val.count > 0, "used only with --val"},
        {&o.eval_steps, o.val.count > 0, "used only with --val"},
    };
    trainer_check_options(&o.t, options, &o.epochs, true);
    mixing_check(&o.mix, &o.input, options, o.t.steps);
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    if (o.kind == REWARD_MODEL_PRM && o.normalize)
        usage_error("--normalize: a process model's scores are probabilities; used only with --kind bt or orm");
}

static bool none(const char *text) { return text && !strcmp(text, "none"); }

/* Allocates the activations, the batch and the arrays. A micro-batch must hold the longest record. longest: rows of a
 * record; records: maximum number of records of a pass. */
static void open_work(Run *r, int32_t longest, int64_t records) {
    const int rows = o.t.micro_tokens > longest ? (int)o.t.micro_tokens : longest;
    trainer_announce(&r->t, options, rows, 0, 0);
    r->batch = batch_new(rows, rows, rows);
    trainer_workspace(&r->t, &r->work, rows);
    r->score = (float *)xcalloc((size_t)rows, sizeof *r->score);
    r->dscore = (float *)xcalloc((size_t)rows, sizeof *r->dscore);
    r->margin = (float *)xcalloc((size_t)rows, sizeof *r->margin);
    r->count = (int32_t *)xcalloc((size_t)rows, sizeof *r->count);
    r->label = (float *)xcalloc((size_t)rows, sizeof *r->label);
    r->cost = (double *)xcalloc((size_t)records, sizeof *r->cost);
    r->owner = (int32_t *)xcalloc((size_t)records, sizeof *r->owner);
    r->own = (int64_t *)xcalloc((size_t)records, sizeof *r->own);
}

static void close_run(Run *r, bool stopped) {
    workspace_free(&r->work, &r->t.model);
    batch_free(&r->batch);
    micro_plan_free(&r->plan);
    eval_sets_free(&r->held);
    free(r->score), free(r->dscore), free(r->margin), free(r->count), free(r->label), free(r->cost), free(r->owner),
        free(r->own);
    trainer_close(&r->t, stopped);
}

/* Writes the best model so far with the normalisation of its own scores. */
static void save_best(Run *r) {
    set_note(r, r->normal);
    trainer_save_model(&r->t, o.t.best.file);
    set_note(r, NULL);
}

/* Trains on `left` records of data, in steps of --per-device-train-batch-size. Returns true if a signal stopped the
 * run. */
static bool train(Run *r, const Labelled *data, Mix *mixture, int64_t left, const Labelled *val) {
    Trainer *t = &r->t;
    int64_t *records = (int64_t *)xmalloc((size_t)o.batch * sizeof *records);
    mixing_begin(mixture, t);
    trainer_schedule(t, o.t.steps ? o.t.steps : (left + o.batch - 1) / o.batch);
    trainer_check_steps(t, o.epochs, "--per-device-train-batch-size");
    left -= mixture->taken;

    bool stopped = false;
    const Stats before = o.val.count && o.eval_on_start && !t->step ? validate(r, val) : (Stats){0};
    if (before.sum.units > 0) trainer_check_metric(t);
    if (!t->step) show_records(r, o.val.count ? val : data, "before");
    while (t->step < t->steps && !stopped) {
        int64_t n = 0;
        trainer_begin_step(t);
        while (n < o.batch && n < left) records[n++] = mix_next(mixture);
        left -= n;
        const Stats stats = run_records(r, data, records, n, true);
        count_tokens(t, data, records, n);
        trainer_update(t, stats.sum.loss);
        mix_save(mixture, t->state);
        trainer_settled(t);

        const double epoch = mix_epochs(mixture);
        const double seconds = clock_seconds() - t->step_start;
        metrics_set(&t->metrics, "epoch", epoch);
        mixing_log(mixture, &t->metrics);
        set_metrics(&t->metrics, "", &stats);
        if (o.val.count && (t->step == t->steps || t->step % o.eval_steps == 0)) {
            const TrainerPause pause = trainer_pause(t, RUN_EVALUATION);
            const Stats after = validate(r, val);
            if (trainer_improved(t)) save_best(r);
            trainer_go_on(t, pause);
            char a[16], b[16];
            snprintf(b, sizeof b, "%.1f %%", 100 * accuracy(&before));
            snprintf(a, sizeof a, "%.1f %%", 100 * accuracy(&after));
            if (t->step == t->steps)
                metrics_final(&t->metrics, "held-out accuracy", before.sum.units > 0 ? b : NULL, a);
        }
        const bool pairs = o.kind == REWARD_MODEL_BT;
        trainer_log(t, stats.sum.loss, "accuracy %5.1f%% | %s %6.3f | epoch %.2f | %.0f records/s",
                    100 * accuracy(&stats), pairs ? "margin" : "score",
                    pairs ? mean_margin(&stats) : mean_score(&stats), epoch, (double)n / seconds);
        stopped = trainer_should_stop(t, 1);
    }
    if (!stopped) show_records(r, o.val.count ? val : data, "after");
    free(records);
    return stopped;
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    Trainer *t = &r->t;
    o.t = trainer_defaults(1e-4);
    o.t.takes_scorers = true;
    o.batch = 8;
    o.epochs = 3;
    o.mix = mixing_defaults();
    o.max_length = 1024;
    o.eval_steps = 100;
    o.eval_on_start = true;
    o.margin = true;
    o.sharing = true;
    options_parse_all(options, &about, argc, argv);
    check_options();
    program_start();
    const bool own = o.normalize && !none(o.normalize); /* --normalize names a shard */
    trainer_check_files(&o.t, options, NULL);

    Labelled data, val = {0}, third = {0};
    Inputs files = mixing_inputs(&o.mix, &o.input), held = trainer_inputs("-j/--val", &o.val, true), normal = {0};
    data_open(&data, &files);
    if (o.val.count) data_open(&val, &held);
    if (own) {
        inputs_add(&normal, o.normalize);
        data_open(&third, &normal);
    }
    trainer_open(t, "train_rm", &o.t, data.shard, true);
    const int32_t context = t->model.config.context;
    if (!o.max_length || o.max_length > context) o.max_length = context;
    int32_t longest = 0, positions = 0;
    int64_t most = o.batch; /* records of a pass */
    Labelled *const all[] = {&data, o.val.count ? &val : NULL, own ? &third : NULL};
    for (int i = 0; i < 3; i++) {
        if (!all[i]) continue;
        data_fit(t, all[i]);
        const int32_t rows = labelled_longest(all[i], o.sharing);
        if (rows > longest) longest = rows;
        if (all[i]->count > most) most = all[i]->count;
        for (int64_t k = 0; k < all[i]->count; k++)
            if (labelled_positions(all[i], k) > positions) positions = labelled_positions(all[i], k);
    }
    trainer_set_longest(t, positions);
    if (o.val.count) r->held = labelled_eval_sets(&val, &held, o.t.max_eval_samples);
    if (own) trainer_file(t, "normalize", o.normalize, third.shard->payload_hash);
    check_labels(&data);
    check_soft(&data, true);
    if (option_given(&o.loss.ranking) && !data.ranked.longer)
        warn("--loss-type: has no effect, because no record of %s ranks more than two completions", data.shard->name);
    if (o.val.count) check_soft(&val, false);
    const int32_t step = o.kind == REWARD_MODEL_PRM ? step_token(&data) : -1;
    if (o.kind == REWARD_MODEL_PRM && step < 0)
        warn("%s: steps end in different tokens: a completion that is scored later will count as one step",
             data.shard->name);
    if (o.last_step) keep_last_steps(&data);
    Mix mixture = mixing_open_labelled(t, &o.mix, &files, &data);
    const int64_t records = mixing_records(&mixture, o.epochs, o.t.steps, o.batch);
    open_work(r, longest, most);
    if (o.kind != REWARD_MODEL_PRM && !none(o.normalize)) r->normal = own ? &third : o.val.count ? &val : &data;
    r->step = step;
    set_note(r, NULL); /* for states, which can be used as models */
    const bool stopped = train(r, &data, &mixture, records, &val);
    if (!stopped && r->normal) set_note(r, r->normal);
    close_run(r, stopped);
    mix_free(&mixture);
    for (int i = 0; i < 3; i++)
        if (all[i]) labelled_close(all[i]);
    inputs_close(&files), inputs_close(&held), inputs_close(&normal);
    return 0;
}
