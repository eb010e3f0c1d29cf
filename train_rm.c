/* train_rm.c - reward models: a score of a completion, learnt from preferences, outcomes or steps.
 *
 *   --kind bt    preference shard   L = mean -log sigma(s_chosen - s_rejected - margin)
 *                                     + c mean (s_chosen + s_rejected)^2
 *   --kind orm   unpaired shard     L = mean -log sigma(+-s)      s at the last token: is the completion right?
 *   --kind prm   step shard         L = mean -log sigma(+-s_k)    s_k at the last token of step k: is it right so far?
 *
 * s is a linear head on the output of the final layernorm (losses: llmc/loss/reward.h). One optimizer step takes
 * --per-device-train-batch-size pairs or completions, packed without padding into micro-batches of --micro-tokens. The
 * two completions of a pair share one copy of their prompt, unless --no-prefix-sharing is given. Packing and sharing
 * change the result only by rounding. At the end, the mean and the variance of s on a shard are stored in the
 * checkpoint (llmc/reward/reward_model.h); programs that score with it normalise s to mean 0 and variance 1.
 *
 *     ./train_rm -c sft.bin -i prefs.shard -j held_out.shard -o rm.bin
 */
#include "llmc/reward/calibration.h"
#include "llmc/records/cursor.h"
#include "llmc/records/examples.h"
#include "llmc/records/pairs.h"
#include "llmc/reward/reward_model.h"
#include "llmc/train/trainer.h"

static struct {
    TrainerOptions t;
    RewardLoss loss;
    const char *input, *val, *normalize;
    int64_t batch, max_length, eval_steps;
    double epochs;
    bool margin, sharing, last_step;
    int kind;
} o;

static const Option options[] = {
    // clang-format off
    OPTION_GROUP("Data"),
    OPTION_TEXT  ("input",                       'i', &o.input,      "FILE",
                  "preference, unpaired or step shard, depending on --kind (data/make_shard)"),
    OPTION_TEXT  ("val",                         'j', &o.val,        "FILE",
                  "held-out shard of the same kind, for accuracy, margin and calibration"),
    OPTION_CHOICE("kind",                        0,   &o.kind,       REWARD_MODEL_CHOICES,
                  "Bradley-Terry on pairs, outcome (labelled completions), process (labelled steps)"),
    OPTION_INT   ("per-device-train-batch-size", 'd', &o.batch,      1, 1 << 24,
                  "pairs or completions per optimizer step"),
    OPTION_INT   ("max-length",                  0,   &o.max_length, 0, 1 << 20,
                  "leave out longer records (prm: drop their last steps); 0 uses the model's context"),
    OPTION_REAL  ("num-train-epochs",            'e', &o.epochs,     0.001, 1e6, "passes over the shard"),
    OPTION_INT   ("max-steps",                   'x', &o.t.steps,    0, 1e9,
                  "number of optimizer steps; 0 follows --num-train-epochs"),
    OPTION_FLAG  ("prefix-sharing",              0,   &o.sharing,
                  "process the prompt of a pair once for both completions"),
    OPTION_GROUP("Loss"),
    OPTION_FLAG("use-margin",                 0, &o.margin,
                "bt: subtract each pair's margin from its score difference"),
    OPTION_REAL("label-smoothing",            0, &o.loss.label_smoothing, 0, 0.499,
                "probability that a label is wrong"),
    OPTION_REAL("center-rewards-coefficient", 0, &o.loss.center,          0, 1e6,
                "bt: weight of the penalty that centres a pair's scores on 0 (0.01 is usual); 0 disables"),
    OPTION_FLAG("train-on-last-step-only",    0, &o.last_step,
                "prm: train on the last step of each solution only"),
    OPTION_TEXT("normalize",                  0, &o.normalize,            "FILE",
                "bt, orm: shard to normalise scores on, or none; --val, else --input if not given"),
    TRAINER_MODEL_OPTIONS(o.t),
    TRAINER_OPTIMIZER_OPTIONS(o.t),
    TRAINER_OUTPUT_OPTIONS(o.t),
    OPTION_GROUP("Evaluation"),
    OPTION_INT("eval-steps", 'v', &o.eval_steps, 1, 1e9,
               "evaluate on --val every N steps, and before and after training"),
    OPTION_END
    // clang-format on
};

static const OptionAbout about = {
    "-c MODEL -i SHARD -o OUT [options]",
    "Trains a reward model on preferences, on labelled completions or on labelled steps.\n\n"
    "  ./data/make_shard -i prefs.jsonl -o prefs.shard -f 0.1 -v held_out.shard\n"
    "  ./train_rm -c sft.bin -i prefs.shard -j held_out.shard -o rm.bin\n"
    "  ./train_rm -c sft.bin -i steps.shard -o prm.bin --kind prm\n"
    "  ./evaluate -r rm.bin -i held_out.shard               accuracy, margin, calibration\n"
    "  ./evaluate -c sft.bin -r rm.bin -i tasks.shard       best of n by the reward model"};

/* ---- data ------------------------------------------------------------------------------------------------------ */

/* The records of a shard: pairs, or completions with labels. */
typedef struct Data {
    Pairs pairs;
    Examples examples;
    const Shard *shard;
    int64_t count, dropped, cut; /* records; left out; solutions that lost steps */
    int32_t longest;             /* rows of the longest record */
} Data;

static void data_open(Data *d, const char *path) {
    Error e;
    *d = (Data){0};
    const bool ok = o.kind == REWARD_MODEL_BT
                        ? pairs_open(&d->pairs, path, INT32_MAX, &e)
                        : examples_open(&d->examples, path, o.kind == REWARD_MODEL_ORM ? RECORD_UNPAIRED : RECORD_STEP,
                                        INT32_MAX, &e);
    if (!ok) die("%s", e.text);
    d->shard = o.kind == REWARD_MODEL_BT ? &d->pairs.shard : &d->examples.shard;
}

static void data_close(Data *d) {
    if (o.kind == REWARD_MODEL_BT) pairs_close(&d->pairs);
    else examples_close(&d->examples);
}

/* Leaves out pairs with a completion that does not fit in --max-length, as TRL does: a truncated completion would be a
 * different one. */
static void fit_pairs(Data *d) {
    Pairs *p = &d->pairs;
    for (int64_t i = 0; i < p->count; i++) {
        const Pair q = p->pair[i];
        const int32_t longer = q.chosen_len > q.rejected_len ? q.chosen_len : q.rejected_len,
                      rows = (o.sharing ? 1 : 2) * q.prompt_len + q.chosen_len + q.rejected_len;
        if (q.prompt_len + longer > o.max_length) continue;
        p->pair[d->count++] = q;
        if (rows > d->longest) d->longest = rows;
    }
    d->dropped = p->dropped + p->count - d->count;
    p->count = d->count;
}

/* Leaves out completions that do not fit in --max-length, and the steps of a solution that do not fit. */
static void fit_examples(Data *d) {
    Examples *x = &d->examples;
    for (int64_t i = 0; i < x->count; i++) {
        Example q = x->example[i];
        const int64_t room = o.max_length - q.prompt_len;
        const int32_t steps = q.labels;
        if (q.completion_len > room && o.kind == REWARD_MODEL_ORM) continue;
        while (q.labels && q.at[q.labels - 1] >= room) q.labels--;
        if (!q.labels) continue;
        d->cut += q.labels < steps;
        q.completion_len = q.at[q.labels - 1] + 1; /* nothing is read after the last label */
        x->example[d->count++] = q;
        if (q.prompt_len + q.completion_len > d->longest) d->longest = q.prompt_len + q.completion_len;
    }
    d->dropped = x->dropped + x->count - d->count;
    x->count = d->count;
}

/* Leaves out what does not fit in --max-length and warns about it. Call it once --max-length is known. */
static void data_fit(Data *d) {
    const char *name = d->shard->name;
    const long long max = o.max_length;
    if (o.kind == REWARD_MODEL_BT) fit_pairs(d);
    else fit_examples(d);
    if (!d->count) die("%s: no record is left: all %lld are longer than %lld tokens", name, (long long)d->dropped, max);
    if (d->dropped)
        warn("%s: %lld of %lld records are left out: they have no completion, or are longer than %lld tokens", name,
             (long long)d->dropped, (long long)d->shard->count, max);
    if (d->cut)
        warn("%s: %lld solutions are longer than %lld tokens and lose their last steps", name, (long long)d->cut, max);
}

/* Warns if all labels are equal: the model would learn only their frequency. */
static void check_labels(const Data *d) {
    int64_t good = 0, labels = 0;
    if (o.kind == REWARD_MODEL_BT) return;
    for (int64_t i = 0; i < d->count; i++)
        for (int32_t k = 0; k < d->examples.example[i].labels; k++, labels++) good += d->examples.example[i].label[k];
    if (labels && (!good || good == labels))
        warn("%s: all %lld labels are %s: there is nothing to distinguish", d->shard->name, (long long)labels,
             good ? "good" : "bad");
}

/* Keeps only the label of the last step of each solution. */
static void keep_last_steps(Data *d) {
    for (int64_t i = 0; i < d->count; i++) {
        Example *q = &d->examples.example[i];
        q->at += q->labels - 1;
        q->label += q->labels - 1;
        q->labels = 1;
    }
}

/* The token that every step ends with, or -1. It delimits the steps of completions without labels. */
static int32_t step_token(const Data *d) {
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

/* Statistics of a pass over records. All fields are doubles, so that the ranks can sum them as an array. */
typedef struct Sums {
    double loss, right, units;                  /* units: pairs or labels; right: correctly ranked or classified ones */
    double margin;                              /* bt: sum of s_chosen - s_rejected */
    double scores, total, squares, least, most; /* number of scores, their sum, sum of squares, minimum, maximum */
    Calibration calibration;
} Sums;

typedef struct Work {
    Workspace space;
    Batch batch;
    float *score, *dscore, *margin; /* (targets), (targets), (pairs) */
    uint8_t *label;                 /* (targets) */
    int64_t pairs;                  /* in the batch */
    double *cost;                   /* (records of a pass) tokens of each record */
    int32_t *owner;                 /* (records of a pass) rank of each record */
} Work;

static void add_batch(const Work *w, Sums *s) {
    const int32_t n = w->batch.targets;
    for (int32_t i = 0; i < n; i++) {
        const double score = w->score[i];
        s->scores++;
        s->total += score;
        s->squares += score * score;
        s->least = fmin(s->least, score);
        s->most = fmax(s->most, score);
        if (o.kind != REWARD_MODEL_BT) {
            s->right += (score > 0) == w->label[i];
            s->units++;
            calibration_add_label(&s->calibration, score, w->label[i]);
        } else if (i % 2 == 0) {
            const double difference = score - w->score[i + 1];
            s->margin += difference;
            s->right += difference > 0;
            s->units++;
            calibration_add_pair(&s->calibration, difference);
        }
    }
}

/* Adds one micro-batch's part of the loss to *s; if `train`, also its gradient. N: pairs or labels of the whole
 * step. */
static void micro_batch(Trainer *t, Work *w, bool train, double N, Sums *s) {
    const Batch *b = &w->batch;
    model_forward(&t->model, &w->space, b, 1.0f, &(ModelOutput){.value = w->score});
    s->loss += o.kind == REWARD_MODEL_BT ? loss_bradley_terry(&o.loss, w->score, w->margin, w->pairs, N, w->dscore)
                                         : loss_binary(&o.loss, w->score, w->label, b->targets, N, w->dscore);
    if (train) model_backward(&t->model, &w->space, b, 1.0f, NULL, NULL, w->dscore);
    t->flops += model_flops(&t->model.config, b->rows, 0, batch_pairs(b)) * (train ? 3 : 1);
    add_batch(w, s);
}

/* The number of rows that record i takes in a batch. */
static int32_t record_rows(const Data *d, int64_t i) {
    if (o.kind != REWARD_MODEL_BT) {
        const Example *p = examples_get(&d->examples, i);
        return p->prompt_len + p->completion_len;
    }
    const Pair *p = pairs_get(&d->pairs, i);
    return (o.sharing ? 1 : 2) * p->prompt_len + p->chosen_len + p->rejected_len;
}

/* The number of pairs or labels of record i. */
static int32_t record_units(const Data *d, int64_t i) {
    return o.kind == REWARD_MODEL_BT ? 1 : examples_get(&d->examples, i)->labels;
}

static bool record_fits(const Work *w, const Data *d, int64_t i) {
    return o.kind == REWARD_MODEL_BT ? pair_fits(&w->batch, pairs_get(&d->pairs, i), o.sharing)
                                     : example_fits(&w->batch, examples_get(&d->examples, i));
}

static void record_pack(Work *w, const Data *d, int64_t i) {
    if (o.kind == REWARD_MODEL_BT) {
        const Pair *p = pairs_get(&d->pairs, i);
        w->margin[w->pairs++] = o.margin ? p->margin : 0;
        pair_pack_scores(&w->batch, p, o.sharing);
        return;
    }
    const Example *p = examples_get(&d->examples, i);
    memcpy(w->label + w->batch.targets, p->label, (size_t)p->labels);
    example_pack_scores(&w->batch, p);
}

/* Packs this rank's records into micro-batches and runs them; if N is 0, only counts them. Returns their number. */
static int64_t run_own(Trainer *t, Work *w, const Data *d, const int64_t *records, int64_t n, bool train, double N,
                       Sums *s) {
    int64_t micro = 0;
    batch_clear(&w->batch);
    w->pairs = 0;
    for (int64_t i = 0; i <= n; i++) {
        const int64_t record = i == n ? -1 : records ? records[i] : i;
        if (i < n && w->owner[i] != t->dist.rank) continue;
        if (i == n ? w->batch.targets > 0 : !record_fits(w, d, record)) {
            if (N > 0) micro_batch(t, w, train, N, s);
            batch_clear(&w->batch);
            w->pairs = 0;
            micro++;
        }
        if (i < n) record_pack(w, d, record);
    }
    return micro;
}

/* Runs records records[0..n), or the first n in order if NULL, each on one of the ranks. In the result, `right` and
 * `margin` are means. */
static Sums run_records(Trainer *t, Work *w, const Data *d, const int64_t *records, int64_t n, bool train) {
    const double low = o.kind == REWARD_MODEL_BT ? 0.5 : 0;
    Sums s = {.least = INFINITY, .most = -INFINITY, .calibration = calibration_new(low)};
    double N = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t record = records ? records[i] : i;
        w->cost[i] = record_rows(d, record);
        N += record_units(d, record);
        if (train) t->tokens += record_rows(d, record);
    }
    trainer_share(t, w->cost, n, w->owner);
    if (train) trainer_micros(t, run_own(t, w, d, records, n, true, 0, NULL));
    run_own(t, w, d, records, n, train, N, &s);
    double extremes[] = {-s.least, s.most};
    trainer_maxima(t, extremes, 2);
    trainer_sums(t, (double *)&s, sizeof s / sizeof(double));
    s.least = -extremes[0];
    s.most = extremes[1];
    s.calibration.low = low;
    s.right /= s.units;
    s.margin /= s.units;
    return s;
}

/* Sets the metrics under TRL's names, with a prefix. */
static void set_metrics(Metrics *m, const char *prefix, const Sums *s) {
    const struct {
        const char *name;
        double value;
    } all[] = {{"accuracy", s->right},
               {"min_reward", s->least},
               {"mean_reward", s->total / s->scores},
               {"max_reward", s->most},
               {"margin", s->margin}};
    char name[64];
    for (size_t i = 0; i < sizeof all / sizeof *all - (o.kind != REWARD_MODEL_BT); i++) {
        snprintf(name, sizeof name, "%s%s", prefix, all[i].name);
        metrics_set(m, name, all[i].value);
    }
}

static Sums validate(Trainer *t, Work *w, const Data *val) {
    const double start = program_seconds();
    const Sums s = run_records(t, w, val, NULL, val->count, false);
    const double ece = calibration_error(&s.calibration);
    metrics_set(&t->metrics, "eval_loss", s.loss);
    set_metrics(&t->metrics, "eval_", &s);
    metrics_set(&t->metrics, "eval_ece", ece);
    metrics_line(&t->metrics, "eval  step %lld | loss %.4f | accuracy %.1f%% | calibration error %.1f%% | %.1f s",
                 (long long)t->step, s.loss, 100 * s.right, 100 * ece, program_seconds() - start);
    return s;
}

/* ---- the score's scale ----------------------------------------------------------------------------------------- */

/* Stores the kind of the model and the normalisation of its scores in the model's file. d: the shard on which scores
 * get mean 0 and variance 1, or NULL for no normalisation. step: the token that ends a step, or -1. */
static void set_note(Trainer *t, Work *w, const Data *d, int32_t step) {
    RewardModelNote note = {.kind = (RewardModelKind)o.kind, .deviation = 1, .step_token = step};
    if (d) {
        const Sums s = run_records(t, w, d, NULL, d->count, false);
        const double mean = s.total / s.scores, variance = s.squares / s.scores - mean * mean;
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
    if (!o.input) usage_error("-i/--input is required");
    if (!o.t.output) usage_error("-o/--output is required");
    if (o.kind != REWARD_MODEL_BT && o.loss.center > 0)
        usage_error("--center-rewards-coefficient: used only with --kind bt");
    if (o.kind != REWARD_MODEL_BT && !o.margin) usage_error("--no-use-margin: used only with --kind bt");
    if (o.kind != REWARD_MODEL_BT && !o.sharing) usage_error("--no-prefix-sharing: used only with --kind bt");
    if (o.kind != REWARD_MODEL_PRM && o.last_step) usage_error("--train-on-last-step-only: used only with --kind prm");
    if (o.kind == REWARD_MODEL_PRM && o.normalize)
        usage_error("--normalize: a process model's scores are probabilities; used only with --kind bt or orm");
}

static bool none(const char *text) { return text && !strcmp(text, "none"); }

int main(int argc, char **argv) {
    o.t = trainer_defaults(1e-4);
    o.batch = 8;
    o.epochs = 3;
    o.max_length = 1024;
    o.eval_steps = 100;
    o.margin = true;
    o.sharing = true;
    if (options_parse(options, &about, argc, argv) < argc) usage_error("%s: unexpected argument", argv[argc - 1]);
    check_options();
    program_start();
    const bool own = o.normalize && !none(o.normalize); /* --normalize names a shard */
    const char *inputs[] = {o.input, o.val, own ? o.normalize : NULL, o.t.checkpoint, o.t.resume};
    trainer_check_files(&o.t, inputs, 5, NULL);

    Error e;
    Data data, val = {0}, third = {0};
    data_open(&data, o.input);
    if (o.val) data_open(&val, o.val);
    if (own) data_open(&third, o.normalize);
    Trainer t;
    trainer_open(&t, "train_rm", &o.t, data.shard, true);
    const int32_t context = t.model.config.context;
    if (!o.max_length || o.max_length > context) o.max_length = context;
    data_fit(&data);
    if (o.val) {
        trainer_check_shard(&t, val.shard);
        data_fit(&val);
    }
    if (own) {
        trainer_check_shard(&t, third.shard);
        data_fit(&third);
    }
    check_labels(&data);
    const int32_t step = o.kind == REWARD_MODEL_PRM ? step_token(&data) : -1;
    if (o.kind == REWARD_MODEL_PRM && step < 0)
        warn("%s: steps end in different tokens: a completion that is scored later will count as one step", o.input);
    if (o.last_step) keep_last_steps(&data);

    /* Memory: a micro-batch must hold the longest record. */
    int32_t longest = data.longest > val.longest ? data.longest : val.longest;
    if (third.longest > longest) longest = third.longest;
    const int rows = o.t.micro_tokens > longest ? (int)o.t.micro_tokens : longest;
    trainer_announce(&t, options, rows, 0);
    Work w = {.batch = batch_new(rows, rows, rows)};
    if (!workspace_new(&w.space, &t.model, rows, rows, rows, true, (int)o.t.recompute, &e))
        die("%s; lower --micro-tokens or raise --recompute", e.text);
    w.score = (float *)xcalloc(3 * (size_t)rows, sizeof *w.score);
    w.dscore = w.score + rows;
    w.margin = w.score + 2 * rows;
    w.label = (uint8_t *)xcalloc((size_t)rows, sizeof *w.label);
    int64_t most = data.count > o.batch ? data.count : o.batch; /* records of a pass */
    if (val.count > most) most = val.count;
    if (third.count > most) most = third.count;
    w.cost = (double *)xcalloc((size_t)most, sizeof *w.cost);
    w.owner = (int32_t *)xcalloc((size_t)most, sizeof *w.owner);
    set_note(&t, &w, NULL, step); /* for states, which can be used as models */

    /* The run takes `left` records, in steps of --per-device-train-batch-size. */
    int64_t *records = (int64_t *)xmalloc((size_t)o.batch * sizeof *records);
    int64_t left = o.t.steps ? INT64_MAX : (int64_t)ceil(o.epochs * (double)data.count);
    trainer_schedule(&t, o.t.steps ? o.t.steps : (left + o.batch - 1) / o.batch);
    Cursor cursor = cursor_new(data.count, (uint64_t)o.t.seed);
    if (!cursor_resume(&cursor, t.state)) die("%s: the state was made with another --max-length", o.t.resume);
    left -= cursor_taken(&cursor);

    bool stopped = false;
    const Sums before = o.val && !t.step ? validate(&t, &w, &val) : (Sums){0};
    while (t.step < t.steps && !stopped) {
        int64_t n = 0;
        trainer_begin_step(&t);
        while (n < o.batch && n < left) records[n++] = cursor_next(&cursor);
        left -= n;
        const Sums sums = run_records(&t, &w, &data, records, n, true);
        trainer_update(&t, sums.loss);

        const double epoch = cursor_epochs(&cursor);
        const double seconds = program_seconds() - t.step_start;
        metrics_set(&t.metrics, "epoch", epoch);
        set_metrics(&t.metrics, "", &sums);
        const bool last = t.step == t.steps;
        if (o.val && (last || t.step % o.eval_steps == 0)) {
            const Sums after = validate(&t, &w, &val);
            char a[16], b[16];
            snprintf(b, sizeof b, "%.1f %%", 100 * before.right);
            snprintf(a, sizeof a, "%.1f %%", 100 * after.right);
            if (last) metrics_final(&t.metrics, "held-out accuracy", before.units > 0 ? b : NULL, a);
        }
        const bool pairs = o.kind == REWARD_MODEL_BT;
        trainer_log(&t, sums.loss, "accuracy %5.1f%% | %s %6.3f | epoch %.2f | %.0f records/s", 100 * sums.right,
                    pairs ? "margin" : "score", pairs ? sums.margin : sums.total / sums.scores, epoch,
                    (double)n / seconds);
        cursor_save(&cursor, t.state);
        stopped = trainer_should_stop(&t, 1);
    }
    if (!stopped && o.kind != REWARD_MODEL_PRM && !none(o.normalize))
        set_note(&t, &w, own ? &third : o.val ? &val : &data, step);
    workspace_free(&w.space, &t.model);
    batch_free(&w.batch);
    free(w.score), free(w.label), free(w.cost), free(w.owner), free(records);
    cursor_free(&cursor);
    trainer_close(&t, stopped);
    data_close(&data);
    if (o.val) data_close(&val);
    if (own) data_close(&third);
    return 0;
}
