/* train_dpo.c - direct preference optimization: DPO, its variants and KTO, on shards or on the policy's own samples.
 *
 *   preference shard   --loss-type sigmoid, ipo, ... (listed in llmc/loss/preference.h), several with --loss-weights;
 *                      tpo and tpo-l train on the gold answers of the pairs, too
 *   unpaired shard     --loss-type kto or apo_zero_unpaired (llmc/loss/kto.h); a preference shard gives two completions
 *                      a pair, the chosen one as good and the rejected one as bad
 *   prompt shard       --online: pairs are sampled from the policy and scored in each step (llmc/train/online_pairs.h)
 *
 * One optimizer step takes --per-device-train-batch-size pairs or completions, packed without padding into
 * micro-batches of --micro-tokens. The two completions of a pair share one copy of their prompt, unless
 * --no-prefix-sharing is given. Packing and sharing change the result only by rounding: the normalisers, and the losses
 * that couple pairs, are computed over the whole step.
 *
 *   1. reference   log ref of every completion, from a frozen model or precomputed (ref_logps.h)
 *   2. forward     log pi of every completion; before that, for KTO, log pi of the step's mismatched completions, which
 *                  give its reference point z
 *   3. loss        a function of these log-probabilities alone, with its gradient
 *   4. backward    one micro-batch at a time; if the loss sorts the step's pairs (aot), step 2 runs for all first
 *
 *     ./train_dpo -c sft.bin -i prefs.shard -j held_out.shard -o dpo.bin
 *     ./train_dpo -c sft.bin -i prompts.shard -o online.bin --online --reward-model rm.bin
 */
#include "llmc/base/clock.h"                 /* clock_seconds */
#include "llmc/base/error.h"                 /* die, xmalloc, xcalloc, Error */
#include "llmc/base/options.h"               /* OPTION_INT, OPTION_FLAG, OPTION_GROUP, OPTION_LIST, ... */
#include "llmc/base/program.h"               /* program_start */
#include "llmc/base/text.h"                  /* TextBuffer, text_format, text_free */
#include "llmc/dist/dist.h"                  /* DIST_FIELDS, dist_add, dist_share, dist_sum, ... */
#include "llmc/dist/grads.h"                 /* dist_grads_begin */
#include "llmc/judge/judge_options.h"        /* JUDGE_OPTIONS, judge_given */
#include "llmc/loss/kto.h"                   /* KTO_KTO, KtoBatch, kto_clamp, kto_loss */
#include "llmc/loss/preference.h"            /* PreferenceBatch, PreferenceNormaliser, PreferencePair, ... */
#include "llmc/model/batch.h"                /* Batch */
#include "llmc/model/micro_plan.h"           /* MicroPlan */
#include "llmc/model/pack.h"                 /* batch_free, batch_new */
#include "llmc/model/transformer.h"          /* ModelOutput, model_backward, model_forward, ... */
#include "llmc/model/workspace.h"            /* Workspace, workspace_free */
#include "llmc/records/completion_set.h"     /* CompletionSet, CompletionSlice, completion_set_plan, ... */
#include "llmc/records/eval_sets.h"          /* EvalSets, eval_set, eval_set_size, eval_sets_free, ... */
#include "llmc/records/inputs.h"             /* inputs_close, Inputs */
#include "llmc/records/labelled.h"           /* labelled_eval_sets */
#include "llmc/records/mix.h"                /* Mix, mix_epochs, mix_free, mix_next, ... */
#include "llmc/records/mix_options.h"        /* MIXING_OPTIONS */
#include "llmc/records/pairs.h"              /* Pair, pair_rows */
#include "llmc/records/preference_data.h"    /* PreferenceData, preference_data_close, preference_data_open, ... */
#include "llmc/report/metrics.h"             /* metrics_phase, Metrics, metrics_final, metrics_set, ... */
#include "llmc/report/run_facts.h"           /* RUN_EVALUATION, RUN_SAMPLES, RunPhase */
#include "llmc/reward/code_judge.h"          /* CODE_OPTIONS */
#include "llmc/rollout/episodes.h"           /* EPISODE_OPTIONS */
#include "llmc/rollout/evaluation.h"         /* Evaluation */
#include "llmc/rollout/rollout.h"            /* ROLLOUT_SAMPLING_OPTIONS */
#include "llmc/train/generation.h"           /* Generation, generation_forward, generation_flatten, ... */
#include "llmc/train/generation_options.h"   /* GENERATION_REWARD_OPTIONS, GenerationOptions, ... */
#include "llmc/train/generation_report.h"    /* generation_evaluate, generation_show, generation_compare */
#include "llmc/train/mixing.h"               /* mixing_begin, mixing_check, mixing_inputs, mixing_log, ... */
#include "llmc/train/online_pairs.h"         /* OnlinePairs, ONLINE_NASH_MD, ONLINE_DPO, ONLINE_OPTIONS, ... */
#include "llmc/train/preference_options.h"   /* preference_options_reference, PREFERENCE_OPTIONS, ... */
#include "llmc/train/preference_reference.h" /* preference_reference_run, preference_reference_open, ... */
#include "llmc/train/preference_report.h"    /* PreferenceTotals, preference_report, preference_headline, ... */
#include "llmc/train/reference.h"            /* reference_bytes */
#include "llmc/train/rollout_dump.h"         /* RolloutDump, rollout_dump_step, ROLLOUT_DUMP_OPTIONS, ... */
#include "llmc/train/trainer.h"              /* Trainer, trainer_count_flops, TrainerPause, trainer_begin_step, ... */
#include "llmc/train/trainer_options.h"      /* TRAINER_EVALUATION_OPTIONS, TRAINER_LORA_OPTIONS, ... */

static struct {
    TrainerOptions t;
    GenerationOptions g;
    PreferenceOptions l;
    PreferenceReferenceOptions r;
    OnlineOptions online;
    RolloutDumpOptions rollouts;
    int64_t batch, max_length;
    bool sharing;
} o;

static const Option options[] = {
    // clang-format off
    OPTION_GROUP("Data"),
    OPTION_LIST("input",                       'i', &o.g.input,    "FILE",
                "preference shard; kto: also unpaired shard; --online: prompt shard; or a pattern; may be repeated, "
                "with a weight as FILE:3"),
    MIXING_OPTIONS(o.g.mix),
    OPTION_LIST("val",                         'j', &o.g.val,      "FILE",
                "held-out shard of the same kind, for loss, accuracy and margin"),
    OPTION_INT ("per-device-train-batch-size", 'd', &o.batch,      1, 1 << 24,
                "pairs, completions or prompts per optimizer step"),
    OPTION_INT ("max-length",                  0,   &o.max_length, 0, 1 << 20,
                "truncate completions to this many tokens with their prompt; 0 uses the model's context"),
    OPTION_REAL("num-train-epochs",            0,   &o.g.epochs,   0.001, 1e6, "passes over the shard"),
    OPTION_INT ("max-steps",                   'x', &o.t.steps,    1, 1e9,
                "number of optimizer steps (default: those of --num-train-epochs)"),
    OPTION_FLAG("prefix-sharing",              0,   &o.sharing,
                "process the prompt of a pair once for both completions"),
    PREFERENCE_OPTIONS(o.l),
    PREFERENCE_REFERENCE_OPTIONS(o.r),
    ONLINE_OPTIONS(o.online),
    GENERATION_REWARD_OPTIONS(o.g),
    OPTION_INT ("max-prompt-length",     0,   &o.g.max_prompt,         1, 1 << 20,
                "leave out prompts with more tokens"),
    OPTION_INT ("max-completion-length", 'g', &o.g.max_completion,     1, 1 << 20, "maximum tokens per completion"),
    ROLLOUT_SAMPLING_OPTIONS(o.g, 0.01, "sampling temperature"),
    EPISODE_OPTIONS(o.g.episodes),
    JUDGE_OPTIONS(o.g.judge),
    TRAINER_MODEL_OPTIONS(o.t),
    TRAINER_LORA_OPTIONS(o.t),
    TRAINER_OPTIMIZER_OPTIONS(o.t),
    TRAINER_OUTPUT_OPTIONS(o.t),
    ROLLOUT_DUMP_OPTIONS(o.rollouts),
    OPTION_GROUP("Evaluation"),
    OPTION_FLAG("eval-on-start", 0, &o.g.eval_on_start, "evaluate on --val before the first step, too"),
    OPTION_INT("eval-steps",   0, &o.g.eval_steps,   1, 1e9, "evaluate on --val every N steps, and after training"),
    TRAINER_EVALUATION_OPTIONS(o.t),
    OPTION_INT("sample-count", 0, &o.g.sample_count, 0, 256,
               "--online: number of completions to print before and after training"),
    CODE_OPTIONS(o.g.code),
    OPTION_END
    // clang-format on
};

static const OptionAbout about = {
    "-c MODEL -i SHARD -o OUT [options]",
    "Trains a model on preferences: DPO and its variants on pairs, KTO on completions labelled good or bad.\n\n"
    "  ./data/make_shard -i prefs.jsonl -o prefs.shard --val-fraction 0.1 --val-output held_out.shard\n"
    "  ./train_dpo -c sft.bin -i prefs.shard -j held_out.shard -o dpo.bin\n"
    "  ./train_dpo -c sft.bin -i prefs.shard -o rpo.bin --loss-type sigmoid,sft --loss-weights 1,0.2\n"
    "  ./train_dpo -c sft.bin -i prefs.shard -o simpo.bin --loss-type simpo --beta 2.5 --simpo-gamma 1.375\n"
    "  ./train_dpo -c sft.bin -i triples.shard -o tpo.bin --loss-type tpo\n"
    "  ./train_dpo -c sft.bin -i labelled.shard -o kto.bin --loss-type kto\n"
    "  ./train_dpo -c sft.bin -i prompts.shard -o online.bin --online --reward-model rm.bin"};

/* ---- the run --------------------------------------------------------------------------------------------------- */

typedef struct Run {
    Trainer t;
    Workspace work;
    Batch batch;
    CompletionSet set, mismatch;
    PreferenceReference reference;
    double *cost;   /* (records of a step) tokens of each record */
    int32_t *owner; /* (records of a step) rank of each record */
    OnlinePairs online;
    RolloutDump dump;
    EvalSets held; /* the validation records of a shard */
} Run;

/* Whether the run needs a reference. */
static bool needs_reference(void) {
    if (o.online.on && o.online.kind != ONLINE_DPO) return true;
    return !o.r.none && preference_options_reference(&o.l);
}

/* The policy's forward pass over the batch, which holds the slice x: log-probabilities, entropy and argmax. */
static void forward(Run *r, const CompletionSlice *x) {
    const ModelOutput out = {.logp = x->logp,
                             .entropy = x->entropy,
                             .argmax = x->argmax,
                             .log_square = o.l.pair.use_weighting ? x->square : NULL};
    model_forward(&r->t.model, &r->work, &r->batch, 1.0f, &out);
    trainer_count_flops(&r->t, &r->t.model, &r->batch, 1);
}

static void backward(Run *r, const CompletionSlice *x) {
    model_backward(&r->t.model, &r->work, &r->batch, 1.0f, x->dlogp, NULL, NULL);
    trainer_count_flops(&r->t, &r->t.model, &r->batch, 2);
}

static void forward_all(Run *r, CompletionSet *s) {
    const MicroPlan *plan = completion_set_plan(s, &r->batch);
    for (int32_t m = 0; m < plan->micros; m++) {
        const CompletionSlice x = completion_set_pack(s, &r->batch, plan->first[m], plan->first[m + 1]);
        forward(r, &x);
    }
}

/* Adds entropy and accuracy of the completion tokens of x, whose targets are in r->batch. */
static void count_tokens(const Run *r, const CompletionSlice *x, PreferenceTotals *stats) {
    for (int32_t i = 0; i < x->count; i++) {
        const int32_t *at = x->offset + 4 * i;
        for (int32_t t = at[1]; t < at[4]; t++) stats->entropy += x->entropy[t];
        for (int32_t t = at[1]; t < at[2]; t++) stats->right += x->argmax[t] == r->batch.target_token[t];
        stats->tokens += at[4] - at[1];
        stats->chosen_tokens += at[2] - at[1];
        stats->records++;
    }
}

/* ---- 2. forward, 3. loss, 4. backward -------------------------------------------------------------------------- */

static PreferenceBatch pair_batch(const Run *r, const CompletionSlice *x) {
    return (PreferenceBatch){.pairs = x->count,
                             .offset = x->offset,
                             .logp = x->logp,
                             .ref_logp = r->reference.kind == REFERENCE_NONE ? NULL : x->ref,
                             .log_square = o.l.pair.use_weighting ? x->square : NULL,
                             .linear = r->online.linear ? r->online.linear + 2 * x->first : NULL};
}

/* Runs the pairs of the set: their loss, and the model's gradient if `train`. N: the normaliser of the whole step. */
static void run_pairs(Run *r, CompletionSet *s, const PreferenceNormaliser *N, bool train, PreferenceTotals *stats) {
    const PreferenceConfig *c = &o.l.pair;
    const MicroPlan *plan = completion_set_plan(s, &r->batch);
    const bool first_all = preference_sorts(c) && plan->micros > 1; /* the loss needs all pairs at once */
    if (first_all) {
        forward_all(r, s);
        const CompletionSlice x = completion_set_slice(s, 0, s->count);
        const PreferenceBatch all = pair_batch(r, &x);
        stats->loss += preference_loss(c, N, &all, x.dlogp, &stats->pair);
    }
    for (int32_t m = 0; m < plan->micros; m++) {
        const CompletionSlice x = completion_set_pack(s, &r->batch, plan->first[m], plan->first[m + 1]);
        const PreferenceBatch b = pair_batch(r, &x);
        if (!first_all) {
            forward(r, &x);
            stats->loss += preference_loss(c, N, &b, x.dlogp, &stats->pair);
        }
        count_tokens(r, &x, stats);
        if (!train) continue;
        if (first_all) {
            model_forward_backward(&r->t.model, &r->work, &r->batch, 1.0f, x.dlogp, &(ModelOutput){0});
            trainer_count_flops(&r->t, &r->t.model, &r->batch, 3);
        } else backward(r, &x);
    }
}

/* Runs the labelled completions of the set in the same way. z, total: the reference point and the number of completions
 * of the whole step. */
static void run_labelled(Run *r, const PreferenceData *d, CompletionSet *s, double z, double total, bool train,
                         PreferenceTotals *stats) {
    const MicroPlan *plan = completion_set_plan(s, &r->batch);
    int32_t *offset = (int32_t *)xmalloc(((size_t)s->count + 1) * sizeof *offset);
    uint8_t *good = (uint8_t *)xmalloc((size_t)s->count + 1);
    for (int32_t m = 0; m < plan->micros; m++) {
        const CompletionSlice x = completion_set_pack(s, &r->batch, plan->first[m], plan->first[m + 1]);
        for (int32_t i = 0; i < x.count; i++) {
            offset[i] = x.offset[4 * i];
            good[i] = d->good[s->record[x.first + i]];
        }
        offset[x.count] = x.offset[4 * x.count];
        const KtoBatch b = {.completions = x.count, .offset = offset, .good = good, .logp = x.logp, .ref_logp = x.ref};
        forward(r, &x);
        stats->loss += kto_loss(&o.l.kto, z, total, &b, x.dlogp, &stats->kto);
        count_tokens(r, &x, stats);
        if (train) backward(r, &x);
    }
    free(offset), free(good);
}

/* z of the whole step: the mean log-ratio of its mismatched completions, at least 0. */
static double reference_point(Run *r, const PreferenceData *d, double total) {
    CompletionSet *s = &r->mismatch;
    double sum = 0;
    if (o.l.kto.loss != KTO_KTO) return 0;
    forward_all(r, s);
    preference_reference_run(&r->reference, &r->batch, d, s, true);
    for (int32_t i = 0; i < s->count; i++)
        for (int32_t t = s->offset[4 * i]; t < s->offset[4 * i + 4]; t++) sum += (double)s->logp[t] - s->ref[t];
    return kto_clamp(dist_total(&r->t.dist, sum) / total);
}

/* Runs records records[0..n), or the first n in order if NULL, each on one of the ranks. z: KTO's reference point, or
 * 0. */
static PreferenceTotals run_records(Run *r, const PreferenceData *d, const int64_t *records, int64_t n, bool train,
                                    double *z) {
    Trainer *t = &r->t;
    CompletionSet *s = &r->set;
    PreferenceTotals stats = {0};
    PreferenceNormaliser N = {.pairs = (double)n};
    completion_set_clear(s);
    completion_set_clear(&r->mismatch);
    for (int64_t i = 0; i < n; i++) r->cost[i] = completion_set_rows(s, &d->pair[records ? records[i] : i]);
    dist_share(r->cost, n, t->dist.ranks, r->owner);
    for (int64_t i = 0; i < n; i++) {
        const int64_t record = records ? records[i] : i;
        const Pair *p = &d->pair[record];
        N.chosen_tokens += p->chosen_len;
        N.prompt_tokens += s->prompts ? p->prompt_len - 1 : 0;
        N.gold_tokens += p->gold_len;
        if (train) t->tokens += pair_rows(p, false); /* TRL counts the prompt of each completion */
        if (r->owner[i] != t->dist.rank) continue;
        completion_set_add(s, p, record);
        if (o.l.unpaired) completion_set_add(&r->mismatch, &d->mismatch[record], record);
    }
    preference_reference_run(&r->reference, &r->batch, d, s, false);
    *z = o.l.unpaired ? reference_point(r, d, (double)n) : 0;
    if (train) dist_grads_begin(&t->grads, completion_set_plan(s, &r->batch)->micros);
    if (o.l.unpaired) run_labelled(r, d, s, *z, (double)n, train, &stats);
    else run_pairs(r, s, &N, train, &stats);
    dist_sum(&t->dist, DIST_FIELDS(stats));
    return stats;
}

/* ---- online training --------------------------------------------------------------------------------------------- */

/* One step of Nash-MD, on the policy's completions. */
static void run_nash(Run *r, CompletionSet *s, PreferenceTotals *stats) {
    const MicroPlan *plan = completion_set_plan(s, &r->batch);
    for (int32_t m = 0; m < plan->micros; m++) {
        const CompletionSlice x = completion_set_pack(s, &r->batch, plan->first[m], plan->first[m + 1]);
        const PreferenceBatch b = pair_batch(r, &x);
        forward(r, &x);
        stats->loss += nash_md_loss(o.l.pair.beta, s->count, &b, r->online.probability + x.first, x.dlogp);
        count_tokens(r, &x, stats);
        backward(r, &x);
        for (int32_t i = 0; i < x.count; i++) {
            const PreferencePair pair = preference_sums(&o.l.pair, &b, i);
            preference_count(&o.l.pair, &pair, &stats->pair);
        }
    }
}

/* One step on completions that the policy samples. */
static PreferenceTotals run_online(Run *r) {
    CompletionSet *s = &r->set;
    PreferenceTotals stats = {0};
    online_draw(&r->online);
    online_make_pairs(&r->online, s);
    preference_reference_run(&r->reference, &r->batch, NULL, s, false);
    const PreferenceNormaliser N = preference_normaliser(s->offset, s->count);
    dist_grads_begin(&r->t.grads, completion_set_plan(s, &r->batch)->micros);
    if (!s->count) metrics_warn(&r->t.metrics, "no pair of this step has scores that differ");
    else if (o.online.kind == ONLINE_NASH_MD) run_nash(r, s, &stats);
    else run_pairs(r, s, &N, true, &stats);
    return stats;
}

/* ---- evaluation -------------------------------------------------------------------------------------------------- */

/* Sets and prints the metrics of validation records. set: their name, or NULL for all; z: KTO's reference point. */
static void report_validation(Run *r, const char *set, const PreferenceTotals *s, double z, double seconds) {
    Metrics *m = &r->t.metrics;
    TextBuffer prefix = {0};
    char text[64], name[80] = "";
    text_format(&prefix, "eval_%s%s", set ? set : "", set ? "_" : "");
    if (set) snprintf(name, sizeof name, " | %.70s", set);
    metrics_set_of(m, set, "loss", s->loss);
    preference_report(m, prefix.text, &o.l, s, z);
    preference_headline_text(text, &o.l, s, z);
    metrics_summary(m, "eval  step %lld%s | loss %.4f | %s | %.1f s", (long long)r->t.step, name, s->loss, text,
                    seconds);
    text_free(&prefix);
}

/* The loss and KTO's reference point of several sets are the means of theirs, weighted by their records. */
static PreferenceTotals validate(Run *r, const PreferenceData *val) {
    const EvalSets *sets = &r->held;
    const double start = clock_seconds(), all = (double)eval_sets_size(sets);
    const RunPhase phase = metrics_phase(&r->t.metrics, RUN_EVALUATION);
    PreferenceTotals s = {0};
    double point = 0;
    for (int k = 0; k < sets->count; k++) {
        const int64_t n = eval_set_size(sets, k);
        const double began = clock_seconds();
        double z;
        PreferenceTotals part = run_records(r, val, eval_set(sets, k), n, false, &z);
        if (sets->told) report_validation(r, sets->name[k], &part, z, clock_seconds() - began);
        if (sets->count > 1) part.loss *= (double)n / all, z *= (double)n / all;
        dist_add(DIST_FIELDS(s), DIST_FIELDS(part));
        point += z;
    }
    report_validation(r, NULL, &s, point, clock_seconds() - start);
    metrics_phase(&r->t.metrics, phase);
    return s;
}

/* Shows the first pairs of a shard with the implicit rewards of both answers. */
static void show_pairs(Run *r, const PreferenceData *d, const char *when) {
    Trainer *t = &r->t;
    CompletionSet *s = &r->set;
    if (o.l.unpaired || !trainer_records(t)) return;
    const TrainerPause pause = trainer_pause(t, RUN_SAMPLES);
    completion_set_clear(s);
    for (int64_t i = 0; i < d->count && i < TRAINER_PAIRS; i++) completion_set_add(s, &d->pair[i], i);
    preference_reference_run(&r->reference, &r->batch, d, s, false);
    forward_all(r, s);
    const CompletionSlice x = completion_set_slice(s, 0, s->count);
    const PreferenceBatch b = pair_batch(r, &x);
    for (int32_t i = 0; i < s->count; i++) {
        const PreferencePair pair = preference_sums(&o.l.pair, &b, i);
        PreferenceStats one = {0};
        preference_count(&o.l.pair, &pair, &one);
        trainer_show_pair(t, when, &d->pair[i], one.chosen, one.rejected);
    }
    trainer_go_on(t, pause);
}

/* ---- the program ----------------------------------------------------------------------------------------------- */

/* Allocates the policy's activations and the batch. A micro-batch must hold the longest record. sampled, more: samples that
 * the online run draws at once, and bytes that it allocates in addition. */
static void open_work(Run *r, int32_t longest, int sampled, size_t more) {
    Trainer *t = &r->t;
    const int rows = o.t.micro_tokens > longest ? (int)o.t.micro_tokens : longest;
    const bool model = needs_reference() && (!o.r.precompute || o.r.reference || o.t.resume);
    trainer_announce(t, options, rows, sampled, more + (model ? reference_bytes(t, o.r.reference, rows) : 0));
    r->batch = batch_new(rows, rows, rows);
    trainer_workspace(t, &r->work, rows);
}

/* Trains on pairs or labelled completions from a shard. Returns true if a signal stopped the run. */
static bool train_on_shard(Run *r) {
    Trainer *t = &r->t;
    PreferenceData data, val = {0}, *both[] = {&data, &val};
    Error e;
    Inputs in = mixing_inputs(&o.g.mix, &o.g.input), held = trainer_inputs("-j/--val", &o.g.val, true);
    const bool golds = preference_uses_gold(&o.l.pair);
    if (!preference_data_open(&data, &in, o.l.unpaired, golds, &e) ||
        (held.count && !preference_data_open(&val, &held, o.l.unpaired, golds, &e)))
        die("%s", e.text);
    trainer_open(t, "train_dpo", &o.t, data.shard, false);
    if (t->dist.ranks > 1 && preference_sorts(&o.l.pair))
        die("--loss-type aot: sorts the pairs of the whole step, which works on one rank only; start one rank");
    const int32_t context = t->model.config.context;
    if (!o.max_length || o.max_length > context) o.max_length = context;
    if (o.g.val.count) trainer_check_shard(t, val.shard);
    const int shards = o.g.val.count ? 2 : 1;
    for (int i = 0; i < shards; i++)
        if (!preference_data_fit(both[i], o.sharing, o.max_length, (uint64_t)o.t.seed, &e)) die("%s", e.text);
    if (held.count) r->held = labelled_eval_sets(&val.records, &held, o.t.max_eval_samples);
    if (o.l.unpaired) preference_options_balance(&o.l, data.shard->name, data.goods, data.count);
    Mix mixture = mixing_open_labelled(t, &o.g.mix, &in, &data.records);
    /* The run takes `left` records, in steps of --per-device-train-batch-size. */
    int64_t left = mixing_records(&mixture, o.g.epochs, o.t.steps, o.batch);
    const int32_t positions = preference_reference_longest(both, shards);
    trainer_set_longest(t, positions);
    open_work(r, data.longest > val.longest ? data.longest : val.longest, 0, 0);
    mixing_begin(&mixture, t);
    const int64_t most = val.count > o.batch ? val.count : o.batch;
    r->cost = (double *)xcalloc((size_t)most, sizeof *r->cost);
    r->owner = (int32_t *)xcalloc((size_t)most, sizeof *r->owner);
    if (needs_reference())
        preference_reference_open(&r->reference, t, &r->work, &r->batch, o.sharing, positions, both, shards);

    int64_t *records = (int64_t *)xmalloc((size_t)o.batch * sizeof *records);
    trainer_schedule(t, o.t.steps ? o.t.steps : (left + o.batch - 1) / o.batch);
    trainer_check_steps(t, o.g.epochs, "--per-device-train-batch-size");
    left -= mixture.taken;

    bool stopped = false;
    const PreferenceTotals before =
        o.g.val.count && o.g.eval_on_start && !t->step ? validate(r, &val) : (PreferenceTotals){0};
    if (before.records > 0) trainer_check_metric(t);
    const PreferenceData *shown = o.g.val.count ? &val : &data;
    if (!t->step) show_pairs(r, shown, "before");
    while (t->step < t->steps && !stopped) {
        int64_t n = 0;
        trainer_begin_step(t);
        while (n < o.batch && n < left) records[n++] = mix_next(&mixture);
        left -= n;
        double z;
        const PreferenceTotals stats = run_records(r, &data, records, n, true, &z);
        trainer_update(t, stats.loss);
        t->trained += (int64_t)stats.tokens;
        preference_reference_sync(&r->reference);
        mix_save(&mixture, t->state);
        trainer_settled(t);

        const double epoch = mix_epochs(&mixture);
        const double seconds = clock_seconds() - t->step_start;
        metrics_set(&t->metrics, "epoch", epoch);
        mixing_log(&mixture, &t->metrics);
        preference_report(&t->metrics, "", &o.l, &stats, z);
        if (o.g.val.count && (t->step == t->steps || t->step % o.g.eval_steps == 0)) {
            const TrainerPause pause = trainer_pause(t, RUN_EVALUATION);
            const PreferenceTotals after = validate(r, &val);
            trainer_go_on(t, pause);
            trainer_evaluated(t);
            char a[32], b[32];
            const char *form = o.l.unpaired ? "%.3f" : "%.1f %%";
            const double scale = o.l.unpaired ? 1 : 100;
            snprintf(b, sizeof b, form, scale * preference_headline(&o.l, &before));
            snprintf(a, sizeof a, form, scale * preference_headline(&o.l, &after));
            if (t->step == t->steps)
                metrics_final(&t->metrics, o.l.unpaired ? "held-out margin" : "held-out accuracy",
                              before.records > 0 ? b : NULL, a);
        }
        char text[64];
        preference_headline_text(text, &o.l, &stats, z);
        trainer_log(t, stats.loss, "%s | epoch %.2f | %.0f records/s", text, epoch, (double)n / seconds);
        stopped = trainer_should_stop(t, 1);
    }
    if (!stopped) show_pairs(r, shown, "after");
    free(r->cost), free(r->owner), free(records);
    mix_free(&mixture);
    eval_sets_free(&r->held);
    inputs_close(&in), inputs_close(&held);
    preference_data_close(&data);
    if (o.g.val.count) preference_data_close(&val);
    return stopped;
}

/* Scores the completions of --rollouts: RolloutScore. */
static void score_rollouts(void *online, Generation *fixed, float *score, float *gold) {
    (void)gold;
    online_judge((OnlinePairs *)online, fixed->scored, fixed->completions);
    const bool compared = fixed->o->judges_pairs; /* a completion alone has no score then */
    for (int32_t i = 0; i < fixed->completions; i++) score[i] = compared ? NAN : fixed->scored[i].reward;
}

/* Opens the file of --rollouts. */
static void open_rollouts(Run *r) {
    RolloutDump *d = &r->dump;
    rollout_dump_open(d, &o.rollouts, &r->online.g);
    d->work = &r->work;
    d->reference = r->reference.kind == REFERENCE_LIVE ? &r->reference.live.model : NULL;
    d->reference_work = &r->reference.live.work;
    d->score = score_rollouts;
    d->context = &r->online;
}

/* Writes the policy's completions of the step if a dump is due, with the values that they have after it. */
static void dump_rollouts(Run *r) {
    RolloutDump *d = &r->dump;
    Generation *g = d->g;
    const ModelOutput policy = {.logp = g->logp, .entropy = g->entropy}, reference = {.logp = g->ref_logp};
    if (!rollout_dump_due(d, r->t.step)) return;
    generation_flatten(g, false);
    generation_forward(g, &r->t.model, d->work, 0, g->completions, &policy);
    if (d->reference) generation_forward(g, d->reference, d->reference_work, 0, g->completions, &reference);
    rollout_dump_step(d, 0, g->completions, &(RolloutValues){.ref_logp = d->reference != NULL});
}

/* Trains on pairs that are sampled and scored in each step. Returns true if a signal stopped the run. */
static bool train_online(Run *r) {
    Trainer *t = &r->t;
    OnlinePairs *p = &r->online;
    Generation *g = &p->g;
    o.g.prompts = o.batch;
    online_open_data(p, &o.online, &o.g, t, (uint64_t)o.t.seed);
    trainer_open(t, "train_dpo", &o.t, &g->train.shard, false);
    if (t->dist.ranks > 1) die("--online: cannot distribute its work over ranks; start one rank");
    online_open_prompts(p);
    open_work(r, generation_longest_prompt(g) * (o.sharing ? 1 : 2) + 2 * (int)o.g.max_completion, (int)o.g.slots,
              online_bytes(p));
    if (needs_reference())
        preference_reference_open(&r->reference, t, &r->work, &r->batch, o.sharing, generation_longest(g), NULL, 0);
    online_open(p, &r->reference.live.model);
    open_rollouts(r);

    trainer_schedule(t, g->steps);
    trainer_check_steps(t, o.g.epochs, "--per-device-train-batch-size");
    rollout_dump_schedule(&r->dump, t->steps);
    Evaluation before = {0}, after = {0};
    if (!t->step) {
        generation_show(g, "before");
        if (o.g.eval_on_start && o.g.val.count) before = generation_evaluate(g, "before");
        rollout_dump_step(&r->dump, 0, 0, NULL);
    }
    bool stopped = false;
    while (t->step < t->steps && !stopped) {
        trainer_begin_step(t);
        const PreferenceTotals stats = run_online(r);
        const OnlineSummary judged = online_summary(p);
        trainer_update(t, stats.loss);
        t->trained += (int64_t)stats.tokens;
        preference_reference_sync(&r->reference);
        generation_save(g);
        trainer_settled(t);

        if (stats.records > 0) preference_report(&t->metrics, "", &o.l, &stats, 0);
        online_log(p, &judged, &o.l.pair, &stats.pair);
        if (o.g.val.count && (t->step == t->steps || t->step % o.g.eval_steps == 0))
            after = generation_evaluate(g, NULL);
        trainer_log(t, stats.loss, "score %7.3f | margin %.3f | length %.1f | %.0f tok/s", judged.score, judged.margin,
                    judged.length, judged.length * 2 * p->count / (g->gen_seconds + 1e-9));
        dump_rollouts(r);
        online_forget(p);
        stopped = trainer_should_stop(t, 1);
    }
    rollout_dump_say(&r->dump);
    if (!stopped) {
        generation_show(g, "after");
        if (o.g.val.count) generation_compare(g, &before, &after);
    }
    rollout_dump_close(&r->dump);
    online_close(p);
    return stopped;
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    o.t = trainer_defaults(1e-6);
    o.g = generation_defaults();
    o.l = preference_options();
    o.r = preference_reference_options();
    o.online = online_options();
    o.rollouts = rollout_dump_options();
    o.batch = 8;
    o.g.epochs = 3;
    o.max_length = 1024;
    o.g.eval_steps = 100;
    o.sharing = true;
    o.g.max_completion = 64;
    o.g.temperature = 0.9;
    options_parse_all(options, &about, argc, argv);
    preference_options_parse(&o.l);
    trainer_check_options(&o.t, options, &o.g.epochs, false);
    mixing_check(&o.g.mix, &o.g.input, options, o.t.steps);
    const OptionUse use[] = {{&o.max_length, !o.online.on, "--online limits prompts and completions separately"},
                             {&o.rollouts.path, o.online.on, "used only with --online"}};
    options_refuse_unused(options, use, 2);
    rollout_dump_check(&o.rollouts, options);
    preference_options_check(&o.l, options);
    preference_reference_check(&o.r, preference_options_reference(&o.l), o.l.unpaired, o.t.lora_rank > 0 || o.t.adapter,
                               options);
    o.g.judges_pairs = o.online.on && judge_given(&o.g.judge) && !o.g.reward && !o.g.reward_cmd;
    online_check(&o.online, &o.g, &o.l, &o.r, options);
    o.l.single = o.online.on && o.online.kind == ONLINE_NASH_MD;
    program_start();
    trainer_check_files(&o.t, options, NULL);

    r->reference.o = &o.r;
    r->set = (CompletionSet){.shared = o.sharing, .prompts = preference_has(&o.l.pair, PREFERENCE_ORPO)};
    const bool stopped = o.online.on ? train_online(r) : train_on_shard(r);
    trainer_write(&r->t, stopped);
    preference_reference_close(&r->reference);
    workspace_free(&r->work, &r->t.model);
    batch_free(&r->batch);
    completion_set_free(&r->set), completion_set_free(&r->mismatch);
    trainer_close(&r->t, stopped);
    return 0;
}
