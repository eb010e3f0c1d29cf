/* train_sft.c - supervised fine-tuning: maximum likelihood of the completions in shards of conversations, or of text.
 *
 *   L = - sum_r w_r log pi(y_r | y_<r) / sum_r w_r        over the targets r of one optimizer step
 *
 * w_r is 1 on the assistant's tokens, or on all tokens with --no-completion-only-loss. One optimizer step takes records
 * with at least --batch-tokens tokens in total, packed without padding into micro-batches of --micro-tokens. The
 * normaliser is that of the whole step, so the size of the micro-batches affects only memory.
 *
 * With --teacher, a second model's distributions at the targets are learned, too (train/teacher.h).
 *
 *     ./train_sft -c d12 -i chat.shard -j val.shard -o sft.bin --report sft.html
 */
#include "llmc/base/clock.h"            /* clock_seconds */
#include "llmc/base/error.h"            /* xcalloc, die, warn, Error, ... */
#include "llmc/base/io.h"               /* XXH3_64bits */
#include "llmc/base/options.h"          /* OPTION_INT, OPTION_GROUP, OPTION_REAL, OPTION_FLAG, ... */
#include "llmc/base/program.h"          /* program_start */
#include "llmc/base/random.h"           /* RANDOM_NOISE */
#include "llmc/base/text.h"             /* TextBuffer, text_format, text_free */
#include "llmc/dist/dist.h"             /* DIST_FIELDS, dist_add, dist_share, dist_sum */
#include "llmc/dist/grads.h"            /* dist_grads_begin */
#include "llmc/loss/lm.h"               /* LM_NLL, LmLoss, loss_lm, LM_LOSS_CHOICES */
#include "llmc/model/backend.h"         /* TOKEN_FORWARD_KL */
#include "llmc/model/batch.h"           /* Batch */
#include "llmc/model/micro_plan.h"      /* MicroPlan, BatchSize, micro_plan_add, micro_plan_begin, ... */
#include "llmc/model/model.h"           /* model_set_longest, Model */
#include "llmc/model/model_text.h"      /* model_text_decode */
#include "llmc/model/pack.h"            /* batch_clear, batch_free, batch_new, batch_sequence */
#include "llmc/model/transformer.h"     /* ModelOutput, model_backward, model_forward, model_forward_backward */
#include "llmc/model/workspace.h"       /* Workspace, workspace_free */
#include "llmc/records/eval_sets.h"     /* EvalSets, eval_set, eval_set_size, eval_sets_free, ... */
#include "llmc/records/inputs.h"        /* Inputs, inputs_close */
#include "llmc/records/mix.h"           /* Mix, mix_epochs, mix_free, mix_next, ... */
#include "llmc/records/mix_options.h"   /* MIXING_OPTIONS, MixingOptions, mixing_defaults */
#include "llmc/records/shard.h"         /* Shard, Record, record_free, shard_close, ... */
#include "llmc/records/tokens.h"        /* TokenMeaning, TokenShard */
#include "llmc/report/metrics.h"        /* metrics_phase, metrics_set, metrics_set_of, Metrics, ... */
#include "llmc/report/run_facts.h"      /* RunPhase, RUN_EVALUATION, RUN_SAMPLES, RUN_SAMPLING */
#include "llmc/rollout/rollout.h"       /* Completion, Rollout, RolloutRequest, Sampling, ... */
#include "llmc/text/tokenizer.h"        /* Tokenizer, tokenizer_free, tokenizer_store */
#include "llmc/text/tokenizer_files.h"  /* tokenizer_open */
#include "llmc/train/mixing.h"          /* mixing_begin, mixing_check, mixing_check_limit, mixing_inputs, ... */
#include "llmc/train/sampled_answers.h" /* SampledAnswers, answers_on, answers_record, ANSWERS_OF_DATA, ... */
#include "llmc/train/teacher.h"         /* teacher_given, TeacherStats, teacher_metrics, teacher_set, ... */
#include "llmc/train/trainer.h"         /* Trainer, TrainerPause, state_int, trainer_announce, ... */
#include "llmc/train/trainer_options.h" /* TRAINER_EVALUATION_OPTIONS, TRAINER_LORA_OPTIONS, ... */

static struct {
    TrainerOptions t;
    OptionList inputs, vals;
    MixingOptions mix;
    TeacherOptions teacher;
    AnswerOptions answers;
    const char *tokenizer;
    int64_t batch_tokens, max_length, eval_steps, sample_steps, sample_count, sample_tokens;
    double epochs, neftune, distill_weight;
    bool completion_only, eval_on_start;
    int loss;
} o;

static const Option options[] = {
    // clang-format off
    OPTION_GROUP("Data"),
    OPTION_LIST("input",            'i', &o.inputs,       "FILE",
                "chat shard or token shard to train on (make_shard), or a pattern; may be repeated, with a weight as "
                "FILE:3"),
    MIXING_OPTIONS(o.mix),
    OPTION_LIST("val",              'j', &o.vals,         "FILE", "the same for the validation loss"),
    OPTION_TEXT("tokenizer",        't', &o.tokenizer,    "SPEC",
                "tokenizer of token shards for a model without one: bytes, a directory or tokenizer.json"),
    OPTION_INT ("batch-tokens",     'd', &o.batch_tokens, 1, 1 << 30, "minimum number of tokens per optimizer step"),
    OPTION_INT ("max-length",       0,   &o.max_length,   0, 1 << 20,
                "truncate records to this many tokens; 0 uses the model's context"),
    OPTION_REAL("num-train-epochs", 0,   &o.epochs,       0.001, 1e6, "passes over the shard"),
    OPTION_INT ("max-steps",        'x', &o.t.steps,      1, 1e9,
                "number of optimizer steps (default: those of --num-train-epochs)"),
    OPTION_GROUP("Loss"),
    OPTION_FLAG  ("completion-only-loss", 0, &o.completion_only, "train on the assistant's tokens only"),
    OPTION_CHOICE("loss-type",            0, &o.loss,            LM_LOSS_CHOICES,
                  "negative log-likelihood, or dynamic fine-tuning"),
    OPTION_REAL  ("neftune-noise-alpha",  0, &o.neftune,         0, 1000,
                  "scale of the noise on embeddings (5 is usual); 0 disables NEFTune"),
    TEACHER_OPTIONS(o.teacher),
    TEACHER_TABLE_OPTIONS(o.teacher),
    OPTION_REAL  ("distill-weight",       0, &o.distill_weight,  1e-9, 1,
                  "weight w of the divergence in the loss; that of --loss-type has 1 - w"),
    ANSWER_OPTIONS(o.answers),
    TRAINER_MODEL_OPTIONS(o.t),
    TRAINER_LORA_OPTIONS(o.t),
    TRAINER_OPTIMIZER_OPTIONS(o.t),
    TRAINER_OUTPUT_OPTIONS(o.t),
    OPTION_GROUP("Evaluation"),
    OPTION_FLAG("eval-on-start", 0, &o.eval_on_start, "compute the validation loss before the first step, too"),
    OPTION_INT("eval-steps",    0, &o.eval_steps,    1, 1e9,
               "compute the validation loss every N steps and at the end"),
    TRAINER_EVALUATION_OPTIONS(o.t),
    OPTION_INT("sample-steps",  0, &o.sample_steps,  0, 1e9, "print samples every N steps; 0 disables"),
    OPTION_INT("sample-count",  0, &o.sample_count,  1, 256, "number of samples, from the first validation records"),
    OPTION_INT("sample-tokens", 0, &o.sample_tokens, 1, 65536, "maximum tokens per sample"),
    OPTION_END
    // clang-format on
};

static const OptionAbout about = {
    "-c MODEL -i chat.shard -o OUT [options]",
    "Fine-tunes a model on conversations, or on prompts with completions.\n\n"
    "  ./data/make_shard -i chat.jsonl -o chat.shard\n"
    "  ./train_sft -c d12 -i chat.shard -o sft.bin          a random model of depth 12\n"
    "  ./train_sft -c base.bin -i chat.shard -o - | ./train_grpo -c - -i tasks.shard -o grpo.bin"};

static int32_t record_length(const Shard *s, int64_t i) {
    const int64_t length = shard_length(s, i);
    return (int32_t)(length < o.max_length ? length : o.max_length);
}

/* Takes the records of the next step: enough for --batch-tokens, but no more than the run has left. Returns their
 * number. */
static int64_t next_records(Mix *m, const Shard *s, int64_t left, int64_t *records, int64_t most) {
    int64_t n = 0, tokens = 0;
    while (n < left && n < most && tokens < o.batch_tokens) {
        records[n] = mix_next(m);
        tokens += record_length(s, records[n++]);
    }
    return n;
}

/* The number of steps that so many records give, but no more than --max-steps. The mixture must be at its beginning, and
 * stays there. */
static int64_t steps_of_run(Mix *m, const Shard *s, int64_t records, int64_t *scratch, int64_t most) {
    int64_t steps = 0;
    while (records > 0 && (!o.t.steps || steps < o.t.steps)) {
        records -= next_records(m, s, records, scratch, most);
        steps++;
    }
    mix_rewind(m);
    return steps;
}

static int32_t count_targets(const Record *r) {
    int32_t targets = 0;
    for (int32_t k = 1; k < r->count; k++) targets += !o.completion_only || r->mask[k];
    return targets;
}

/* Reads record i, truncated to --max-length. Returns its number of targets. */
static int32_t read_record(const Shard *s, int64_t i, Record *r) {
    Error e;
    if (!shard_record(s, i, r, &e)) die("%s", e.text);
    if (r->count > o.max_length) r->count = (int32_t)o.max_length;
    return count_targets(r);
}

/* Opens the files of --input or --val. */
static void open_data(Shard *s, const Inputs *files) {
    trainer_open_files(s, files, true);
    if (s->kind != RECORD_CHAT) die("%s: a shard of kind %s, expected chat", s->name, record_kind_name(s->kind));
    if (!s->count) die("%s: the shard is empty", s->name);
}

/* The files of a shard. */
static int files_of(const Shard *s) { return s->parts ? s->parts : 1; }
static const Shard *file_of(const Shard *s, int k) { return s->parts ? &s->part[k] : s; }

/* Gives a shard without a tokenizer, which consists of token shards, that of --tokenizer. A file that says which
 * tokenizer made it must be made by this one; without the option, byte tokens are recognised. */
static void find_tokenizer(Shard *s) {
    Error e;
    Tokenizer t;
    void *blob;
    size_t n;
    if (s->tokenizer_bytes && o.tokenizer) usage_error("--tokenizer: %s has its own", s->name);
    if (s->tokenizer_bytes) return;
    if (!tokenizer_open(&t, o.tokenizer ? o.tokenizer : "bytes", &e) || !tokenizer_store(&t, &blob, &n, &e))
        die("%s", e.text);
    bool fits = true, says = false;
    for (int k = 0; k < files_of(s); k++) {
        const Shard *p = file_of(s, k);
        const TokenMeaning *m = &p->text.meaning;
        const bool same = m->vocab ? m->tokenizer == XXH3_64bits(blob, n) : p->text.highest < t.vocab;
        if (!same && o.tokenizer) die("%s: it was not made with the tokenizer of --tokenizer %s", p->name, o.tokenizer);
        fits = fits && same;
        says = says || m->vocab;
    }
    if (fits && (says || o.tokenizer)) {
        free(s->tokenizer);
        s->tokenizer = blob;
        s->tokenizer_bytes = n;
        s->vocab = t.vocab;
    } else free(blob);
    tokenizer_free(&t);
}

/* The token that begins a document in a token shard that does not say, or -1. */
static int32_t document_start(const Trainer *t) {
    const Tokenizer *k = &t->text.tokenizer;
    if (t->text.present) return k->add_bos ? k->bos : k->eos;
    return t->model.config.vocab == 50257 ? 50256 : -1; /* GPT-2 without a tokenizer */
}

/* Divides token shards into records. Refuses one that says that another tokenizer made it than the model's. */
static void split_text(const Trainer *t, Shard *s) {
    const int32_t start = document_start(t);
    for (int k = 0; k < files_of(s); k++) {
        const TokenShard *text = &file_of(s, k)->text;
        if (!text->name) continue;
        if (text->meaning.vocab && t->text.present && text->meaning.vocab == t->text.tokenizer.vocab &&
            text->meaning.tokenizer != XXH3_64bits(t->file.tokenizer, t->file.tokenizer_bytes))
            warn("%s: the tokenizer that made it is not the same in every detail as the model's", text->name);
        if (!text->meaning.vocab && start < 0)
            warn("%s: it does not say which token begins a document, and the model has no tokenizer: it is read as one "
                 "document",
                 text->name);
    }
    shard_split(s, (int32_t)o.max_length, start);
    if (!s->count) die("%s: it has fewer than two tokens", s->name);
}

/* Warns about records without targets, truncated records and completions without a stop token; ends the program if no
 * record has a target. stop: -1 to accept completions without a stop token. */
static void check_file(const Shard *s, int32_t stop) {
    Record r = {0};
    if (s->text.name) return;
    int64_t empty = 0, cut = 0, endless = 0, cut_empty = 0;
    for (int64_t i = 0; i < s->count; i++) {
        const int32_t targets = read_record(s, i, &r);
        const bool is_cut = shard_length(s, i) > o.max_length;
        empty += !targets;
        cut += is_cut;
        cut_empty += is_cut && !targets;
        bool stops = false;
        for (int32_t k = 0; k < r.count && !stops; k++) stops = r.mask[k] && r.tokens[k] == stop;
        endless += stop >= 0 && targets && !stops;
    }
    const long long n = s->count;
    record_free(&r);
    if (empty == s->count)
        die("%s: no record has a token to train on%s", s->name, cut_empty ? " within --max-length" : "");
    if (empty) warn("%s: %lld of %lld records have no token to train on", s->name, (long long)empty, n);
    if (cut)
        warn("%s: %lld of %lld records are longer than %lld tokens and were truncated", s->name, (long long)cut, n,
             (long long)o.max_length);
    if (endless == s->count - empty && stop >= 0)
        warn("%s: no completion that is trained on ends with the stop token: the model will not learn to stop",
             s->name);
    else if (endless)
        warn("%s: %lld of %lld records have no stop token among the tokens that are trained on", s->name,
             (long long)endless, n);
}

static void check_data(const Shard *s, int32_t stop) {
    for (int k = 0; k < files_of(s); k++) check_file(file_of(s, k), stop);
}

/* ---- a step ---------------------------------------------------------------------------------------------------- */

typedef struct Run {
    Trainer t;
    Workspace work;
    Batch batch;
    MicroPlan plan;
    Rollout engine;                /* for --sample-steps */
    int32_t longest;               /* tokens of the longest sequence that is trained on or evaluated */
    Teacher teacher;               /* with --teacher */
    SampledAnswers answers;        /* with --on-policy-share or --seq-kd */
    Record record;                 /* the one that was read last */
    float *logp, *entropy, *dlogp; /* (targets of a micro-batch) */
    int32_t *argmax;               /* (targets of a micro-batch) */
    float *noise;                  /* (rows of a micro-batch) NEFTune's scales */
    int32_t *noise_record;         /* (rows of a micro-batch) the record's place in the step */
    int32_t *place;                /* (records of a step) the place of this rank's records in the step */
    int32_t first;                 /* index in `own` of the micro-batch's first record */
    double *cost;                  /* (records of a step) tokens of each record, 0 without a target */
    int32_t *targets, *owner;      /* (records of a step) number of targets; rank */
    int64_t *own;                  /* (records of a step) the records of this rank */
    EvalSets held;                 /* the validation records */
    Mix mixture;                   /* order of the training records */
    int64_t left;                  /* training records that the run has left */
    int64_t *records;              /* (records of a step) the training records of a step */
} Run;

enum { TRAINING_SET, VALIDATION_SET }; /* of the teacher's lists */

/* Totals over the targets of a step. Doubles only, so that ranks can add them. */
typedef struct Stats {
    double loss, entropy, right, targets;
    TeacherStats teacher;
} Stats;

static double accuracy(const Stats *s) { return s->right / s->targets; }
static double mean_entropy(const Stats *s) { return s->entropy / s->targets; }

/* NEFTune (Jain et al. 2023, alg. 1): noise of scale alpha / sqrt(length * width) on each token's embedding. It is
 * drawn by the place of the record in the step and of the token in it, so neither micro-batches nor ranks change it. */
static void neftune(Run *r) {
    const Batch *b = &r->batch;
    const int32_t width = r->t.model.config.width;
    for (int i = 0; i < b->segments; i++) /* a segment is a record */
        for (int32_t k = 0; k < b->segment[i].len; k++) {
            r->noise[b->segment[i].start + k] = (float)(o.neftune / sqrt((double)b->segment[i].len * width));
            r->noise_record[b->segment[i].start + k] = r->place[r->first + i];
        }
    r->work.noise_scale = r->noise;
    r->work.noise_record = r->noise_record;
    r->work.noise_seed = (uint64_t)o.t.seed;
    r->work.noise_stream = RANDOM_NOISE + ((uint64_t)r->t.step << 32);
}

/* Notes a teacher that is not finite, which ends the run. */
static void check_teacher(Run *r) {
    Error e;
    const Batch *b = &r->batch;
    const int32_t bad = teacher_broken(&r->teacher, b->targets);
    if (bad < 0) return;
    int i = 0;
    while (b->target_row[bad] >= b->segment[i].start + b->segment[i].len) i++;
    error_set(&e, "%s: the teacher's logits are not finite (record %lld)", teacher_name(&o.teacher),
              (long long)r->own[r->first + i]);
    trainer_later(&r->t, &e);
}

/* Takes the teacher's lists at the targets of the batch, if it has lists. */
static void take_lists(Run *r, bool train) {
    int32_t at = 0;
    if (!o.teacher.table) return;
    for (int i = 0; i < r->batch.segments; i++)
        at += teacher_take_lists(&r->teacher, train ? TRAINING_SET : VALIDATION_SET, r->own[r->first + i], at);
}

/* micro_batch() with a teacher. Returns the batch's part of the loss. */
static double taught_batch(Run *r, bool train, double N, const ModelOutput *out, TeacherStats *stats) {
    const Batch *b = &r->batch;
    const double w = train && r->answers.source == ANSWERS_OF_STUDENT ? 1 : o.distill_weight;
    take_lists(r, train);
    teacher_weigh(&r->teacher, 0, b->targets, w / N);
    for (int32_t i = 0; i < b->targets; i++) r->dlogp[i] = (float)((w - 1) / N);
    if (train && o.loss == LM_NLL) teacher_train(&r->teacher, &r->work, b, 1.0f, w < 1 ? r->dlogp : NULL, out);
    else teacher_forward(&r->teacher, &r->work, b, NULL, 1.0f, out);
    check_teacher(r);
    const double own = loss_lm(train ? (LmLoss)o.loss : LM_NLL, r->logp, NULL, b->targets, N, r->dlogp);
    const double sum = teacher_add(&r->teacher, 0, b->targets, r->logp, r->argmax, stats);
    if (!train) return own;
    for (int32_t i = 0; i < b->targets; i++) r->dlogp[i] *= (float)(1 - w);
    if (o.loss != LM_NLL) teacher_backward(&r->teacher, &r->work, b, 1.0f, r->dlogp, NULL);
    return w * sum / N + (w < 1 ? (1 - w) * own : 0);
}

/* micro_batch() without a teacher. Returns the batch's part of the loss. */
static double plain_batch(Run *r, bool train, double N, const ModelOutput *out) {
    Model *m = &r->t.model;
    const Batch *b = &r->batch;
    if (train && o.loss == LM_NLL) { /* the gradient is known before the forward pass */
        for (int32_t i = 0; i < b->targets; i++) r->dlogp[i] = (float)(-1.0 / N);
        model_forward_backward(m, &r->work, b, 1.0f, r->dlogp, out);
    } else model_forward(m, &r->work, b, 1.0f, out);
    const double loss = loss_lm(train ? (LmLoss)o.loss : LM_NLL, r->logp, NULL, b->targets, N, r->dlogp);
    if (train && o.loss != LM_NLL) model_backward(m, &r->work, b, 1.0f, r->dlogp, NULL, NULL);
    return loss;
}

/* Adds one micro-batch's part of the loss to *stats; if `train`, also its gradient. N: the step's normaliser. */
static void micro_batch(Run *r, bool train, double N, Stats *stats) {
    Trainer *t = &r->t;
    const Batch *b = &r->batch;
    const ModelOutput out = {.logp = r->logp, .entropy = r->entropy, .argmax = r->argmax};
    r->work.noise_scale = NULL;
    if (train && o.neftune > 0) neftune(r);
    stats->loss +=
        teacher_given(&o.teacher) ? taught_batch(r, train, N, &out, &stats->teacher) : plain_batch(r, train, N, &out);
    trainer_count_flops(t, &t->model, b, train ? 3 : 1);
    for (int32_t i = 0; i < b->targets; i++) {
        stats->entropy += r->entropy[i];
        stats->right += r->argmax[i] == b->target_token[i];
    }
    stats->targets += b->targets;
}

/* Record i, at a place in the step: with a drawn answer, or as in the data. Returns its number of targets. */
static int32_t step_record(Run *r, const Shard *s, int64_t i, int64_t place, const Record **record) {
    *record = answers_record(&r->answers, place);
    if (*record) return count_targets(*record);
    *record = &r->record;
    return read_record(s, i, &r->record);
}

/* Draws the answers of a step, if it has others than those of the data. */
static void draw_answers(Run *r, const Shard *s, const int64_t *records, int64_t n) {
    SampledAnswers *a = &r->answers;
    answers_begin(a, n);
    if (!a->source) return;
    for (int64_t i = 0; i < n; i++) {
        read_record(s, records[i], &r->record);
        answers_prompt(a, i, &r->record, (int32_t)o.max_length);
    }
    const RunPhase phase = metrics_phase(&r->t.metrics, RUN_SAMPLING);
    answers_draw(a, (int32_t)o.max_length);
    metrics_phase(&r->t.metrics, phase);
}

/* Distributes the records over the ranks and divides those of this rank into micro-batches. Returns the number of
 * targets of all records. */
static double plan_records(Run *r, const Shard *s, const int64_t *records, int64_t n) {
    double N = 0;
    int32_t own = 0;
    for (int64_t i = 0; i < n; i++) {
        const Record *record;
        r->targets[i] = step_record(r, s, records[i], i, &record);
        r->cost[i] = r->targets[i] ? record->count : 0;
        N += r->targets[i];
    }
    dist_share(r->cost, n, r->t.dist.ranks, r->owner);
    micro_plan_begin(&r->plan, &r->batch, 0);
    for (int64_t i = 0; i < n; i++) {
        if (r->owner[i] != r->t.dist.rank || !r->targets[i]) continue;
        r->place[own] = (int32_t)i;
        r->own[own++] = records[i];
        micro_plan_add(&r->plan, (BatchSize){(int64_t)r->cost[i], r->targets[i], 1});
    }
    return N;
}

static void pack_records(Run *r, const Shard *s, int32_t first, int32_t end) {
    batch_clear(&r->batch);
    r->first = first;
    for (int32_t i = first; i < end; i++) {
        const Record *record;
        step_record(r, s, r->own[i], r->place[i], &record);
        batch_sequence(&r->batch, record->tokens, o.completion_only ? record->mask : NULL, record->count);
    }
}

/* Runs the records, each on one of the ranks. Returns the loss and the totals over all ranks. */
static Stats run_records(Run *r, const Shard *s, const int64_t *records, int64_t n, bool train) {
    Stats stats = {0};
    if (train) draw_answers(r, s, records, n);
    else r->answers.source = ANSWERS_OF_DATA;
    const double N = plan_records(r, s, records, n);
    const MicroPlan *plan = &r->plan;
    if (train) dist_grads_begin(&r->t.grads, plan->micros);
    for (int32_t m = 0; m < plan->micros; m++) {
        pack_records(r, s, plan->first[m], plan->first[m + 1]);
        micro_batch(r, train, N, &stats);
    }
    dist_sum(&r->t.dist, DIST_FIELDS(stats));
    return stats;
}

/* ---- evaluation ------------------------------------------------------------------------------------------------ */

/* Sets the metrics of validation records. set: their name, or NULL for all. */
static void set_validation(Run *r, const char *set, const Stats *s) {
    Metrics *m = &r->t.metrics;
    metrics_set_of(m, set, "loss", s->loss);
    metrics_set_of(m, set, "mean_token_accuracy", accuracy(s));
    metrics_set_of(m, set, "entropy", mean_entropy(s));
    if (!teacher_given(&o.teacher)) return;
    TextBuffer prefix = {0};
    text_format(&prefix, "eval_%s%s", set ? set : "", set ? "_" : "");
    teacher_metrics(m, prefix.text, &s->teacher);
    text_free(&prefix);
}

/* Evaluates the model on the validation records, and sets the metrics. */
static Stats validate(Run *r, const Shard *val) {
    Metrics *m = &r->t.metrics;
    const RunPhase phase = metrics_phase(m, RUN_EVALUATION);
    const EvalSets *sets = &r->held;
    const double start = clock_seconds();
    Stats stats = {0};
    for (int k = 0; k < sets->count; k++) {
        Stats part = run_records(r, val, eval_set(sets, k), eval_set_size(sets, k), false);
        if (sets->told) {
            set_validation(r, sets->name[k], &part);
            metrics_line(m, "eval  step %lld | %s | loss %.4f | accuracy %.1f%%", (long long)r->t.step, sets->name[k],
                         part.loss, 100 * accuracy(&part));
        }
        if (sets->count > 1) part.loss *= part.targets;
        dist_add(DIST_FIELDS(stats), DIST_FIELDS(part));
    }
    if (sets->count > 1) stats.loss /= stats.targets;
    if (stats.targets == 0) stats.loss = NAN; /* a mean over nothing */
    set_validation(r, NULL, &stats);
    metrics_summary(m, "eval  step %lld | loss %.4f | accuracy %.1f%% | %.1f s", (long long)r->t.step, stats.loss,
                    100 * accuracy(&stats), clock_seconds() - start);
    metrics_phase(m, phase);
    return stats;
}

/* Adds the held-out loss and accuracy to the report's final numbers. before: those from before the first step; without
 * targets, they are not known. */
static void set_final(Metrics *m, const Stats *before, const Stats *after) {
    char text[2][2][32];
    const Stats *const both[] = {before, after};
    for (int k = 0; k < 2; k++) {
        snprintf(text[k][0], sizeof text[k][0], "%.4f", both[k]->loss);
        snprintf(text[k][1], sizeof text[k][1], "%.1f %%", 100 * accuracy(both[k]));
    }
    const bool known = before->targets > 0;
    metrics_final(m, "held-out loss", known ? text[0][0] : NULL, text[1][0]);
    metrics_final(m, "held-out token accuracy", known ? text[0][1] : NULL, text[1][1]);
}

/* Prints greedy completions of the first records' prompts. A prompt ends before the first token that is trained on. With
 * longrope, a sample may need the list for longer sequences than those of training, which do not change by it. */
static void print_samples(Run *run, const Shard *s, const char *when) {
    Error e;
    Trainer *t = &run->t;
    Record *r = &run->record;
    const RunPhase phase = metrics_phase(&t->metrics, RUN_SAMPLES);
    Sampling how = sampling_default();
    how.temperature = 0;
    how.max_new = (int)o.sample_tokens;
    if (!sampling_add_stops(&how, &t->text.ends, &e)) die("%s", e.text);
    for (int64_t i = 0, shown = 0; i < s->count && shown < o.sample_count; i++) {
        read_record(s, i, r);
        int32_t prompt = 0;
        while (prompt < r->count && !r->mask[prompt]) prompt++;
        if (!prompt || prompt == r->count || prompt > run->engine.prompt_max || prompt >= t->model.config.context)
            continue;
        Completion c;
        RolloutRequest q = {.prompt = r->tokens, .prompt_len = prompt, .samples = 1, .out = &c};
        model_set_longest(&t->model, prompt + how.max_new);
        if (!rollout_run(&run->engine, &how, &q, 1, NULL, NULL, &e)) die("%s", e.text);
        model_set_longest(&t->model, run->longest);
        int32_t end = prompt;
        while (end < r->count && r->mask[end]) end++;
        char *asked = model_text_decode(&t->text, r->tokens, prompt, true);
        char *said = model_text_decode(&t->text, c.tokens, c.count, false);
        char *wanted = model_text_decode(&t->text, r->tokens + prompt, end - prompt, false);
        metrics_line(&t->metrics, "sample %s%s", asked, said);
        metrics_sample(&t->metrics, when, asked, said, wanted, NAN);
        free(asked), free(said), free(wanted);
        completion_free(&c);
        shown++;
    }
    metrics_phase(&t->metrics, phase);
}

/* ---- the run --------------------------------------------------------------------------------------------------- */

/* Allocates the activations, the batch and the arrays. A micro-batch must hold the longest record. longest: tokens of a
 * record; records: maximum number of records of a pass. */
static void open_work(Run *r, int32_t longest, int64_t records) {
    Error e;
    Trainer *t = &r->t;
    if (longest > o.max_length) longest = (int32_t)o.max_length;
    const int rows = o.t.micro_tokens > longest ? (int)o.t.micro_tokens : longest, slots = 1,
              new_max = (int)o.sample_tokens;
    const size_t sampling = rollout_bytes(&t->model.config, t->backend, slots, longest, new_max), n = (size_t)records;
    trainer_announce(t, options, rows, o.sample_steps ? slots : 0,
                     (o.sample_steps ? sampling : 0) + teacher_bytes(&r->teacher, rows) +
                         answers_bytes(t, &o.answers, &r->teacher, longest));
    teacher_begin(&r->teacher, rows);
    answers_open(&r->answers, t, &o.answers, &r->teacher, longest);
    r->batch = batch_new(rows, rows, rows);
    trainer_workspace(t, &r->work, rows);
    if (o.sample_steps && !rollout_new(&r->engine, &t->model, slots, longest, new_max, &e)) die("%s", e.text);
    r->logp = (float *)xcalloc((size_t)rows, sizeof *r->logp);
    r->entropy = (float *)xcalloc((size_t)rows, sizeof *r->entropy);
    r->dlogp = (float *)xcalloc((size_t)rows, sizeof *r->dlogp);
    r->noise = (float *)xcalloc((size_t)rows, sizeof *r->noise);
    r->noise_record = (int32_t *)xcalloc((size_t)rows, sizeof *r->noise_record);
    r->place = (int32_t *)xcalloc(n, sizeof *r->place);
    r->argmax = (int32_t *)xcalloc((size_t)rows, sizeof *r->argmax);
    r->cost = (double *)xcalloc(n, sizeof *r->cost);
    r->targets = (int32_t *)xcalloc(n, sizeof *r->targets);
    r->owner = (int32_t *)xcalloc(n, sizeof *r->owner);
    r->own = (int64_t *)xcalloc(n, sizeof *r->own);
}

static void close_run(Run *r, bool stopped) {
    rollout_free(&r->engine);
    workspace_free(&r->work, &r->t.model);
    batch_free(&r->batch);
    micro_plan_free(&r->plan);
    record_free(&r->record);
    free(r->logp), free(r->entropy), free(r->dlogp), free(r->noise), free(r->argmax);
    free(r->noise_record), free(r->place);
    free(r->cost), free(r->targets), free(r->owner), free(r->own), free(r->records);
    mix_free(&r->mixture);
    eval_sets_free(&r->held);
    trainer_write(&r->t, stopped);
    answers_close(&r->answers);
    teacher_close(&r->teacher);
    trainer_close(&r->t, stopped);
}

/* Makes the mixture of the training records, and returns the number of steps of the run, each of at most `most` records.
 * Ends the program if the files' maximum numbers of epochs do not allow --max-steps. */
static int64_t open_mixture(Run *r, const Shard *data, const Inputs *files, int64_t most) {
    int64_t *count = (int64_t *)xcalloc((size_t)files->count, sizeof *count);
    for (int k = 0; k < files->count; k++) count[k] = file_of(data, k)->count;
    r->mixture = mixing_open(&r->t, &o.mix, files, count);
    free(count);
    r->records = (int64_t *)xmalloc((size_t)most * sizeof *r->records);
    r->left = o.t.steps ? r->mixture.limit : (int64_t)ceil(mix_records(&r->mixture, o.epochs));
    if (r->left == INT64_MAX) return o.t.steps;
    const int64_t steps = steps_of_run(&r->mixture, data, r->left, r->records, most);
    if (o.t.steps) mixing_check_limit(&r->mixture, steps == o.t.steps);
    return steps;
}

/* Trains for so many steps on the records of data, at most `most` in each. Returns true if a signal stopped the run. */
static bool train(Run *r, const Shard *data, const Shard *val, int64_t steps, int64_t most) {
    Trainer *t = &r->t;
    mixing_begin(&r->mixture, t);
    r->left -= r->mixture.taken;
    trainer_schedule(t, steps);
    trainer_check_steps(t, o.epochs, "--batch-tokens");

    bool stopped = false;
    Stats before = {0};
    const bool shows = o.sample_steps && t->dist.rank == 0;
    if (!t->step && o.vals.count && o.eval_on_start) {
        before = validate(r, val);
        trainer_check_metric(t);
    }
    if (!t->step && shows) print_samples(r, o.vals.count ? val : data, "before");
    while (t->step < t->steps && !stopped) {
        trainer_begin_step(t);
        const int64_t n = next_records(&r->mixture, data, r->left, r->records, most);
        r->left -= n;
        const Stats stats = run_records(r, data, r->records, n, true);
        for (int64_t i = 0; i < n; i++) {
            const Record *drawn = answers_record(&r->answers, i);
            t->tokens += drawn ? drawn->count : record_length(data, r->records[i]);
        }
        t->trained += (int64_t)stats.targets;
        trainer_update(t, stats.loss);
        teacher_guard(&r->teacher, &stats.teacher);
        mix_save(&r->mixture, t->state);
        trainer_settled(t);

        const double epoch = mix_epochs(&r->mixture);
        const double seconds = clock_seconds() - t->step_start;
        metrics_set(&t->metrics, "epoch", epoch);
        mixing_log(&r->mixture, &t->metrics);
        metrics_set(&t->metrics, "entropy", mean_entropy(&stats));
        metrics_set(&t->metrics, "mean_token_accuracy", accuracy(&stats));
        if (teacher_given(&o.teacher)) teacher_metrics(&t->metrics, "", &stats.teacher);
        if (o.answers.share > 0)
            metrics_set(&t->metrics, "distill/on_policy_share",
                        (double)state_int(t->state, "on_policy_steps") / (double)t->step);
        if (o.vals.count && (t->step == t->steps || t->step % o.eval_steps == 0)) {
            const TrainerPause pause = trainer_pause(t, RUN_EVALUATION);
            const Stats after = validate(r, val);
            if (t->step == t->steps) set_final(&t->metrics, &before, &after);
            trainer_go_on(t, pause);
            trainer_evaluated(t);
        }
        const bool last = t->step == t->steps;
        trainer_log(t, stats.loss, "accuracy %5.1f%% | epoch %.2f | %.1fk tok/s", 100 * accuracy(&stats), epoch,
                    1e-3 * stats.targets / seconds);
        if (shows && (last || t->step % o.sample_steps == 0)) {
            char when[32] = "after";
            if (!last) snprintf(when, sizeof when, "step %lld", (long long)t->step);
            print_samples(r, o.vals.count ? val : data, when);
        }
        stopped = trainer_should_stop(t, 1);
    }
    return stopped;
}

/* The validation records as sets. */
static EvalSets validation_sets(const Shard *val, const Inputs *files) {
    int *file = (int *)xmalloc((size_t)val->count * sizeof *file);
    for (int64_t i = 0; i < val->count; i++) file[i] = shard_file(val, i);
    const EvalSets sets = eval_sets_new(files, file, val->count, o.t.max_eval_samples);
    free(file);
    return sets;
}

static void check_options(void) {
    const OptionUse use[] = {
        {&o.distill_weight, teacher_given(&o.teacher), "used only with --teacher"},
        {&o.eval_on_start, o.vals.count > 0, "used only with --val"},
        {&o.eval_steps, o.vals.count > 0, "used only with --val"},
        {&o.sample_count, o.sample_steps > 0, "used only with --sample-steps above 0"},
        {&o.sample_tokens, o.sample_steps > 0, "used only with --sample-steps above 0"},
    };
    trainer_check_options(&o.t, options, &o.epochs, false);
    teacher_check(&o.teacher, options);
    if (teacher_is_self(&o.teacher)) usage_error("--teacher self: reads other prompts, which only train_grpo has");
    answer_check(&o.answers, options, teacher_given(&o.teacher));
    if (o.teacher.table && answers_on(&o.answers))
        usage_error(
            "--teacher-log-probs: has the teacher's log-probabilities of the data's answers; --on-policy-share and "
            "--seq-kd draw others");
    mixing_check(&o.mix, &o.inputs, options, o.t.steps);
    options_refuse_unused(options, use, sizeof use / sizeof *use);
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    Trainer *t = &r->t;
    o.t = trainer_defaults(2e-5);
    o.t.teaches_template = true;
    o.batch_tokens = 8192;
    o.epochs = 3;
    o.mix = mixing_defaults();
    o.teacher = teacher_options(TOKEN_FORWARD_KL);
    o.distill_weight = 1;
    o.answers = answer_options();
    o.completion_only = true;
    o.eval_steps = 100;
    o.eval_on_start = true;
    o.sample_count = 3;
    o.sample_tokens = 64;
    options_parse_all(options, &about, argc, argv);
    check_options();
    program_start();
    trainer_check_files(&o.t, options, NULL);

    Shard data, val = {0};
    Inputs files = mixing_inputs(&o.mix, &o.inputs), held = trainer_inputs("-j/--val", &o.vals, true);
    open_data(&data, &files);
    find_tokenizer(&data);
    if (o.vals.count) open_data(&val, &held);
    trainer_open(t, "train_sft", &o.t, &data, false);
    const int32_t context = t->model.config.context;
    if (o.vals.count) trainer_check_shard(t, &val);
    if (!o.max_length || o.max_length > context) o.max_length = context;
    split_text(t, &data);
    if (o.vals.count) split_text(t, &val);
    check_data(&data, t->text.stop);
    if (o.vals.count) check_data(&val, -1);
    if (o.vals.count) r->held = validation_sets(&val, &held);
    const int64_t most = data.count < o.batch_tokens ? o.batch_tokens : data.count; /* records of a step */
    const int64_t steps = open_mixture(r, &data, &files, most);
    const int64_t drawn = answers_on(&o.answers) ? data.longest + o.answers.max_new : data.longest;
    const int64_t most_tokens = drawn > val.longest ? drawn : val.longest;
    const int32_t longest = most_tokens < o.max_length ? (int32_t)most_tokens : (int32_t)o.max_length;
    r->longest = longest;
    trainer_set_longest(t, longest);
    teacher_open(&r->teacher, t, &o.teacher, longest);
    teacher_set(&r->teacher, &data, (int32_t)o.max_length, o.completion_only);
    if (o.vals.count) teacher_set(&r->teacher, &val, (int32_t)o.max_length, o.completion_only);
    open_work(r, longest, most > val.count ? most : val.count);
    teacher_take_table(&r->teacher, &r->batch);
    close_run(r, train(r, &data, &val, steps, most));
    inputs_close(&files), inputs_close(&held);
    shard_close(&data);
    if (o.vals.count) shard_close(&val);
    return 0;
}
