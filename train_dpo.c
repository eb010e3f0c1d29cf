/* train_dpo.c - direct preference optimization: DPO, its variants and KTO, on shards or on the policy's own samples.
 *
 *   preference shard   --loss-type sigmoid, ipo, ... (listed in llmc/loss/preference.h), several with --loss-weights
 *   unpaired shard     --loss-type kto or apo_zero_unpaired (llmc/loss/kto.h)
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
 *   4. backward    one micro-batch at a time; if the loss sorts the step's pairs (aot), 2 is done for all of them first
 *
 *     ./train_dpo -c sft.bin -i prefs.shard -j held_out.shard -o dpo.bin
 *     ./train_dpo -c sft.bin -i prompts.shard -o online.bin --online --reward-model rm.bin
 */
#include "llmc/loss/kto.h"
#include "llmc/records/cursor.h"
#include "llmc/loss/preference.h"
#include "llmc/train/online_pairs.h"
#include "llmc/records/preference_data.h"
#include "llmc/train/reference.h"

static struct {
    TrainerOptions t;
    GenerationOptions g;
    const char *losses, *weights, *reference, *ref_logps, *reward_model;
    int64_t batch, max_length, sync_steps;
    double rpo_alpha, sync_alpha, xpo_alpha, mixture_coef, missing_eos_penalty;
    bool sharing, reference_free, precompute, sync, online, drop_ties;
    int online_kind;
    PreferenceConfig pair;
    KtoConfig kto;
    int divergence;
    bool unpaired; /* from --loss-type */
} o;

static const Option options[] = {
    // clang-format off
    OPTION_GROUP("Data"),
    OPTION_TEXT("input",                       'i', &o.g.input,    "FILE",
                "preference shard; kto: unpaired shard; --online: prompt shard"),
    OPTION_TEXT("val",                         'j', &o.g.val,      "FILE",
                "held-out shard of the same kind, for loss, accuracy and margin"),
    OPTION_INT ("per-device-train-batch-size", 0,   &o.batch,      1, 1 << 24,
                "pairs, completions or prompts per optimizer step"),
    OPTION_INT ("max-length",                  0,   &o.max_length, 0, 1 << 20,
                "truncate completions to this many tokens with their prompt; 0 uses the model's context"),
    OPTION_REAL("num-train-epochs",            0,   &o.g.epochs,   0.001, 1e6, "passes over the shard"),
    OPTION_INT ("max-steps",                   'x', &o.t.steps,    0, 1e9,
                "number of optimizer steps; 0 follows --num-train-epochs"),
    OPTION_FLAG("prefix-sharing",              0,   &o.sharing,
                "process the prompt of a pair once for both completions"),
    OPTION_GROUP("Loss"),
    OPTION_TEXT  ("loss-type",               0, &o.losses,                 "LIST",
                  PREFERENCE_LOSS_CHOICES "; or kto|apo_zero_unpaired"),
    OPTION_TEXT  ("loss-weights",            0, &o.weights,                "LIST",
                  "weight of each loss in the list; 1 each if not given"),
    OPTION_REAL  ("beta",                    0, &o.pair.beta,              1e-9, 1e6,
                  "strength of the KL penalty; larger stays closer to the reference"),
    OPTION_REAL  ("label-smoothing",         0, &o.pair.label_smoothing,   0, 0.499,
                  "probability that a label is wrong; with sigmoid this is conservative DPO"),
    OPTION_CHOICE("f-divergence-type",       0, &o.divergence,             DIVERGENCE_CHOICES,
                  "divergence that penalises leaving the reference"),
    OPTION_REAL  ("f-alpha-divergence-coef", 0, &o.pair.divergence_alpha,  -100, 100, "alpha of alpha_divergence"),
    OPTION_REAL  ("ld-alpha",                0, &o.pair.ld_alpha,          0, 1,
                  "LD-DPO: weight of tokens past the shorter completion's length; 1 disables it"),
    OPTION_FLAG  ("use-weighting",           0, &o.pair.use_weighting,
                  "WPO: weight pairs by their likelihood under the policy"),
    OPTION_REAL  ("rpo-alpha",               0, &o.rpo_alpha,              0, 1e6, "add the SFT loss with this weight"),
    OPTION_REAL  ("discopop-tau",            0, &o.pair.discopop_tau,      1e-6, 1e6,
                  "discopop: temperature of the mixture"),
    OPTION_REAL  ("dpop-lambda",             0, &o.pair.dpop_lambda,       0, 1e6,
                  "dpop: penalty on a chosen completion less likely than under the reference"),
    OPTION_REAL  ("simpo-gamma",             0, &o.pair.simpo_gamma,       -1e6, 1e6, "simpo: target reward margin"),
    OPTION_REAL  ("cpo-alpha",               0, &o.pair.cpo_alpha,         0, 1e6, "cpo: weight of the SFT term"),
    OPTION_REAL  ("alpha",                   0, &o.pair.alpha,             -100, 100,
                  "simpo, cpo: AlphaPO's shape of the reward; 0 uses the log-probability"),
    OPTION_REAL  ("desirable-weight",        0, &o.kto.desirable_weight,   0, 1e6, "kto: weight of good completions"),
    OPTION_REAL  ("undesirable-weight",      0, &o.kto.undesirable_weight, 0, 1e6, "kto: weight of bad completions"),
    OPTION_GROUP("Reference"),
    OPTION_TEXT("reference",                0, &o.reference,      "FILE",
                "reference model; the model of -c if not given"),
    OPTION_FLAG("reference-free",           0, &o.reference_free, "use no reference: its log-probabilities count as 0"),
    OPTION_FLAG("precompute-ref-log-probs", 0, &o.precompute,
                "compute the reference's log-probabilities once, then free it"),
    OPTION_TEXT("ref-log-probs",            0, &o.ref_logps,      "FILE",
                "precompute them into this file, or read them from it if it exists"),
    OPTION_FLAG("sync-ref-model",           0, &o.sync,
                "TR-DPO: move the reference towards the policy during training"),
    OPTION_REAL("ref-model-mixup-alpha",    0, &o.sync_alpha,     0, 1,
                "reference = alpha policy + (1 - alpha) reference"),
    OPTION_INT ("ref-model-sync-steps",     0, &o.sync_steps,     1, 1e9, "update the reference every N steps"),
    OPTION_GROUP("Online"),
    OPTION_FLAG  ("online",       0, &o.online,
                  "sample pairs from the policy; a reward model or verifiers score them"),
    OPTION_CHOICE("online-loss",  0, &o.online_kind,  ONLINE_CHOICES,
                  "which models generate each pair, and with which loss"),
    OPTION_TEXT  ("reward-model", 0, &o.reward_model, "FILE",
                  "reward model that scores the pairs (a checkpoint from train_rm)"),
    GENERATION_REWARD_OPTIONS(o.g),
    OPTION_REAL("missing-eos-penalty",   0,   &o.missing_eos_penalty,  0, 1e9,
                "penalty on the score of a completion without a stop token"),
    OPTION_FLAG("drop-ties",             0,   &o.drop_ties,
                "leave out pairs with equal scores; otherwise the first completion is the chosen one"),
    OPTION_REAL("xpo-alpha",             0,   &o.xpo_alpha,            0, 1e6, "xpo: weight of the optimism term"),
    OPTION_REAL("mixture-coef",          0,   &o.mixture_coef,         0, 1,
                "nash_md: weight of the reference in the mixture"),
    OPTION_INT ("max-prompt-length",     0,   &o.g.max_prompt,         1, 1 << 20,
                "leave out prompts with more tokens"),
    OPTION_INT ("max-completion-length", 'g', &o.g.max_completion,     1, 1 << 20, "maximum tokens per completion"),
    ROLLOUT_SAMPLING_OPTIONS(o.g, 0.01, "sampling temperature"),
    TRAINER_MODEL_OPTIONS(o.t),
    TRAINER_OPTIMIZER_OPTIONS(o.t),
    TRAINER_OUTPUT_OPTIONS(o.t),
    OPTION_GROUP("Evaluation"),
    OPTION_INT("eval-steps",   0, &o.g.eval_steps,   1, 1e9,
               "evaluate on --val every N steps, and before and after training"),
    OPTION_INT("eval-prompts", 0, &o.g.eval_prompts, 0, 1e9, "--online: number of held-out prompts; 0 uses all"),
    OPTION_INT("sample-count", 0, &o.g.sample_count, 0, 256,
               "--online: number of completions to print before and after training"),
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
    "  ./train_dpo -c sft.bin -i labelled.shard -o kto.bin --loss-type kto\n"
    "  ./train_dpo -c sft.bin -i prompts.shard -o online.bin --online --reward-model rm.bin"};

/* ---- the run --------------------------------------------------------------------------------------------------- */

typedef enum { REFERENCE_NONE, REFERENCE_TABLE, REFERENCE_LIVE } ReferenceKind;

typedef struct Run {
    Trainer t;
    Workspace work;
    Batch batch;
    int rows; /* the largest micro-batch */
    AnswerSet set, mismatch;
    ReferenceKind kind;
    Reference reference;
    char *written, *stale; /* --sync-ref-model: reference files of the last state and of the state before it */
    double *cost;          /* (records of a step) tokens of each record */
    int32_t *owner;        /* (records of a step) rank of each record */
    OnlinePairs online;
    float *linear, *probability; /* (2 prompts), (prompts): xpo's optimism, nash_md's preferences */
} Run;

/* Statistics of a pass, summed over its records and over all ranks. */
typedef struct Sums {
    PreferenceStats pair;
    KtoStats kto;
    double loss, entropy, tokens, right, chosen_tokens, records;
    double z; /* kto: the reference point; not a sum */
} Sums;

static void count_flops(Run *r, const Model *m, double passes) {
    r->t.flops += passes * model_flops(&m->config, r->batch.rows, r->batch.targets, batch_pairs(&r->batch));
}

/* One forward pass over the families in r->batch, which begin with `first`: log-probabilities, entropy and argmax. */
static void set_forward(Run *r, AnswerSet *s, int32_t first) {
    const int32_t at = s->offset[3 * first];
    const ModelOutput out = {.logp = s->logp + at, .entropy = s->entropy + at, .argmax = s->argmax + at};
    model_forward(&r->t.model, &r->work, &r->batch, 1.0f, &out);
    if (o.pair.use_weighting) answer_log_square(&r->t.model, &r->work, &r->batch, out.logp, s->square + at);
    count_flops(r, &r->t.model, 1);
}

static void set_forward_all(Run *r, AnswerSet *s) {
    for (int32_t i = 0, next; i < s->count; i = next) {
        next = answer_set_pack(s, &r->batch, i);
        set_forward(r, s, i);
    }
}

/* Adds entropy and accuracy of the completion tokens of families [first, next), whose targets are in r->batch. */
static void set_count(Run *r, const AnswerSet *s, int32_t first, int32_t next, Sums *sums) {
    const int32_t base = s->offset[3 * first];
    for (int32_t i = first; i < next; i++) {
        for (int32_t t = s->offset[3 * i + 1]; t < s->offset[3 * i + 3]; t++) sums->entropy += s->entropy[t];
        sums->tokens += s->offset[3 * i + 3] - s->offset[3 * i + 1];
        for (int32_t t = s->offset[3 * i + 1]; t < s->offset[3 * i + 2]; t++)
            sums->right += s->argmax[t] == r->batch.target_token[t - base];
        sums->chosen_tokens += s->offset[3 * i + 2] - s->offset[3 * i + 1];
        sums->records++;
    }
}

/* ---- the reference --------------------------------------------------------------------------------------------- */

/* Computes log ref of all tokens of the set with a model. */
static void reference_run(Run *r, AnswerSet *s, const Model *m, const Workspace *w) {
    for (int32_t i = 0, next; i < s->count; i = next) {
        next = answer_set_pack(s, &r->batch, i);
        model_forward(m, w, &r->batch, 1.0f, &(ModelOutput){.logp = s->ref + s->offset[3 * i]});
        count_flops(r, m, 1);
    }
}

/* Fills in log ref of the set, from the reference model or from the table of d. mismatch: a set of mismatched
 * completions. */
static void reference_of(Run *r, const PreferenceData *d, AnswerSet *s, bool mismatch) {
    if (r->kind == REFERENCE_LIVE) reference_run(r, s, &r->reference.model, &r->reference.work);
    if (r->kind != REFERENCE_TABLE) return;
    for (int32_t i = 0; i < s->count; i++) {
        const int64_t k = s->record[i] + (mismatch ? d->count : 0);
        memcpy(s->ref + s->offset[3 * i + 1], d->ref + d->at[k], (size_t)(d->at[k + 1] - d->at[k]) * sizeof *s->ref);
    }
}

/* Computes log ref of all completions of d. */
static void reference_compute(Run *r, PreferenceData *d, const Model *m, const Workspace *w) {
    enum { CHUNK = 256 };
    AnswerSet s = {.shared = o.sharing};
    d->ref = (float *)xmalloc((size_t)d->at[d->items] * sizeof *d->ref);
    for (int64_t i = 0; i < d->items;) {
        const int64_t first = i;
        answer_set_clear(&s);
        for (; i < d->items && s.count < CHUNK; i++)
            answer_set_add(&s, i < d->count ? &d->pair[i] : &d->mismatch[i - d->count], i);
        reference_run(r, &s, m, w);
        memcpy(d->ref + d->at[first], s.ref, (size_t)(d->at[i] - d->at[first]) * sizeof *d->ref);
    }
    answer_set_free(&s);
}

/* Takes log ref of d from the file. Ends the program if the file was computed for other data. */
static void reference_take(RefLogps *l, PreferenceData *d) {
    const int64_t tokens = d->at[d->items];
    const float *logp = ref_logps_find(l, d->fingerprint, (uint64_t)tokens);
    if (!logp)
        die("%s: it was computed for other records than those of %s, or with a different --max-length%s; remove it to "
            "recompute it",
            o.ref_logps, d->shard->name, o.unpaired ? " or --seed" : "");
    d->ref = (float *)xmalloc((size_t)tokens * sizeof *d->ref);
    memcpy(d->ref, logp, (size_t)tokens * sizeof *d->ref);
}

/* Precomputes log ref: reads the file if it exists; otherwise runs the reference, which is freed afterwards. */
static void reference_precompute(Run *r, PreferenceData *data[], int count) {
    Error e;
    RefLogps l = {0};
    Trainer *t = &r->t;
    const bool there = o.ref_logps && !access(o.ref_logps, F_OK), own = !o.reference && !t->o->resume;
    const double start = program_seconds();
    uint64_t model = own ? model_weights_hash(&t->model) : 0;
    if (there && !ref_logps_read(&l, o.ref_logps, &e)) die("%s", e.text);
    if (!own && (o.reference || !there)) {
        reference_open(&r->reference, t, o.reference, r->rows, "--precompute-ref-log-probs");
        model = model_weights_hash(&r->reference.model);
    }
    char name[20];
    const char *before = json_string_value(json_object_get(t->state, "ref_logps"));
    snprintf(name, sizeof name, "%016llx", (unsigned long long)(model ? model : l.model));
    if (before && strcmp(before, name))
        die("%s: the reference is not the one that the run began with", there ? o.ref_logps : "--reference");
    if (there && model && l.model != model)
        die("%s: it was computed with a different model than the reference; remove it to recompute it", o.ref_logps);
    json_object_set_new(t->state, "ref_logps", json_string(name));
    for (int i = 0; i < count; i++) {
        if (there) reference_take(&l, data[i]);
        else if (own) reference_compute(r, data[i], &t->model, &r->work);
        else reference_compute(r, data[i], &r->reference.model, &r->reference.work);
    }
    if (r->reference.model.backend) reference_close(&r->reference);
    ref_logps_free(&l);
    if (!there && !model_sync(&t->model, &e)) die("%s", e.text);
    if (!there && !t->dist.rank)
        fprintf(stderr, "reference log-probabilities computed in %.1f s\n", program_seconds() - start);
    if (!o.ref_logps || there || t->dist.rank) return;
    l.model = model;
    for (int i = 0; i < count; i++) {
        const PreferenceData *d = data[i];
        ref_logps_add(&l, d->fingerprint, (uint64_t)d->at[d->items], d->ref);
    }
    if (!ref_logps_write(&l, o.ref_logps, &e)) die("%s", e.text);
}

/* The file of a reference that follows the policy, next to the state that needs it. */
static char *reference_path(const char *state, int64_t step) {
    const size_t size = strlen(state) + 40;
    char *path = (char *)xmalloc(size);
    snprintf(path, size, "%s.reference-%lld", state, (long long)step);
    return path;
}

/* The trainer's save_beside(): writes the reference before a state is written. */
static void reference_save(void *run, const char *state) {
    Run *r = (Run *)run;
    Error e;
    free(r->stale);
    r->stale = r->written;
    r->written = reference_path(state, r->t.step);
    json_object_del(r->t.state, "reference"); /* the reference's file is found by its name */
    if (r->t.dist.rank) return;
    if (!model_save(&r->reference.model, &r->t.file, r->written, false, NULL, NULL, &e)) die("%s", e.text);
}

/* Removes the reference of the previous state. Call it after the new state is written. */
static void reference_forget_stale(Run *r) {
    if (r->stale && strcmp(r->stale, r->written) && !r->t.dist.rank) unlink(r->stale);
    free(r->stale);
    r->stale = NULL;
}

/* TR-DPO (2404.09656), soft update: ref = alpha pi + (1 - alpha) ref. */
static void reference_follow(Run *r) {
    enum { CHUNK = 1 << 20 };
    Model *ref = &r->reference.model;
    const Model *policy = &r->t.model;
    const Backend *b = policy->backend;
    const float alpha = (float)o.sync_alpha;
    const size_t all = policy->tensor[GPT2_FILE_TENSORS].offset;
    float *x = (float *)xmalloc(2 * CHUNK * sizeof *x), *y = x + CHUNK;
    for (size_t at = 0; at < all; at += CHUNK) {
        const size_t n = all - at < CHUNK ? all - at : CHUNK;
        b->weights_download(ref->device, x, weights_at(b, ref->weights, at), n);
        b->weights_download(policy->device, y, weights_at(b, policy->weights, at), n);
        for (size_t i = 0; i < n; i++) x[i] = x[i] * (1 - alpha) + alpha * y[i];
        b->weights_upload(ref->device, weights_at(b, ref->weights, at), x, n);
    }
    free(x);
}

/* Whether the run needs a reference. */
static bool needs_reference(void) {
    if (o.online && o.online_kind != ONLINE_DPO) return true;
    return !o.reference_free && (o.unpaired || preference_needs_reference(&o.pair));
}

static void open_reference(Run *r, PreferenceData *data[], int count) {
    if (!needs_reference()) return;
    r->kind = o.precompute ? REFERENCE_TABLE : REFERENCE_LIVE;
    if (o.precompute) {
        reference_precompute(r, data, count);
        return;
    }
    r->written = o.sync && r->t.o->resume ? reference_path(r->t.o->resume, r->t.step) : NULL;
    reference_open(&r->reference, &r->t, r->written ? r->written : o.reference, r->rows, "--loss-type");
    if (o.sync && r->reference.model.parameters != r->t.model.parameters)
        die("--sync-ref-model: the reference must have the shape of the model");
    if (o.sync) {
        r->t.save_beside = reference_save;
        r->t.beside = r;
    }
}

/* ---- losses of a step ------------------------------------------------------------------------------------------ */

static PreferenceBatch pair_batch(const Run *r, const AnswerSet *s, int32_t first, int32_t next) {
    return (PreferenceBatch){.pairs = next - first,
                             .offset = s->offset + 3 * first,
                             .logp = s->logp,
                             .ref_logp = r->kind == REFERENCE_NONE ? NULL : s->ref,
                             .log_square = o.pair.use_weighting ? s->square : NULL,
                             .linear = r->linear ? r->linear + 2 * first : NULL};
}

/* Runs the pairs of the set: their loss, and the model's gradient if `train`. N: the normaliser of the whole step. */
static void run_pairs(Run *r, AnswerSet *s, const PreferenceNormaliser *N, bool train, Sums *sums) {
    const bool sorts = preference_sorts(&o.pair), at_once = answer_set_micros(s, &r->batch) == 1;
    const bool first_all = sorts && !at_once; /* the gradient needs the log-probabilities of all pairs */
    if (first_all) {
        set_forward_all(r, s);
        const PreferenceBatch all = pair_batch(r, s, 0, s->count);
        sums->loss += preference_loss(&o.pair, N, &all, s->dlogp, &sums->pair);
    }
    for (int32_t i = 0, next; i < s->count; i = next) {
        next = answer_set_pack(s, &r->batch, i);
        if (!first_all) {
            const PreferenceBatch b = pair_batch(r, s, i, next);
            set_forward(r, s, i);
            sums->loss += preference_loss(&o.pair, N, &b, s->dlogp, &sums->pair);
        }
        set_count(r, s, i, next, sums);
        if (!train) continue;
        const float *dlogp = s->dlogp + s->offset[3 * i];
        if (first_all) model_forward_backward(&r->t.model, &r->work, &r->batch, 1.0f, dlogp, &(ModelOutput){0});
        else model_backward(&r->t.model, &r->work, &r->batch, 1.0f, dlogp, NULL, NULL);
        count_flops(r, &r->t.model, first_all ? 3 : 2);
    }
}

/* Runs labelled completions in the same way. z, total: the reference point and number of completions of the whole
 * step. */
static void run_answers(Run *r, const PreferenceData *d, AnswerSet *s, double z, double total, bool train, Sums *sums) {
    int32_t *offset = (int32_t *)xmalloc(((size_t)s->count + 1) * sizeof *offset);
    uint8_t *good = (uint8_t *)xmalloc((size_t)s->count + 1);
    for (int32_t i = 0; i < s->count; i++) {
        offset[i] = s->offset[3 * i];
        good[i] = *d->good[s->record[i]];
    }
    offset[s->count] = answer_set_tokens(s);
    for (int32_t i = 0, next; i < s->count; i = next) {
        next = answer_set_pack(s, &r->batch, i);
        set_forward(r, s, i);
        const KtoBatch b = {
            .answers = next - i, .offset = offset + i, .good = good + i, .logp = s->logp, .ref_logp = s->ref};
        sums->loss += kto_loss(&o.kto, z, total, &b, s->dlogp, &sums->kto);
        set_count(r, s, i, next, sums);
        if (!train) continue;
        model_backward(&r->t.model, &r->work, &r->batch, 1.0f, s->dlogp + offset[i], NULL, NULL);
        count_flops(r, &r->t.model, 2);
    }
    free(offset), free(good);
}

/* z of the whole step: the mean log-ratio of its mismatched completions. */
static double reference_point(Run *r, const PreferenceData *d, double total) {
    AnswerSet *s = &r->mismatch;
    double sum = 0;
    if (o.kto.loss != KTO_KTO) return 0;
    set_forward_all(r, s);
    reference_of(r, d, s, true);
    for (int32_t i = 0; i < s->count; i++)
        for (int32_t t = s->offset[3 * i]; t < s->offset[3 * i + 3]; t++) sum += (double)s->logp[t] - s->ref[t];
    return kto_clamp(trainer_total(&r->t, sum) / total);
}

/* Runs records records[0..n), or the first n in order if NULL, each on one of the ranks. */
static Sums run_records(Run *r, const PreferenceData *d, const int64_t *records, int64_t n, bool train) {
    Trainer *t = &r->t;
    AnswerSet *s = &r->set;
    Sums sums = {0};
    PreferenceNormaliser N = {.pairs = (double)n};
    answer_set_clear(s);
    answer_set_clear(&r->mismatch);
    for (int64_t i = 0; i < n; i++) r->cost[i] = answer_set_rows(s, &d->pair[records ? records[i] : i]);
    trainer_share(t, r->cost, n, r->owner);
    for (int64_t i = 0; i < n; i++) {
        const int64_t record = records ? records[i] : i;
        const Pair *p = &d->pair[record];
        N.chosen_tokens += p->chosen_len;
        N.prompt_tokens += s->prompts ? p->prompt_len - 1 : 0;
        if (train) t->tokens += answer_set_rows(s, p);
        if (r->owner[i] != t->dist.rank) continue;
        answer_set_add(s, p, record);
        if (o.unpaired) answer_set_add(&r->mismatch, &d->mismatch[record], record);
    }
    reference_of(r, d, s, false);
    const double z = o.unpaired ? reference_point(r, d, (double)n) : 0;
    if (train) trainer_micros(t, answer_set_micros(s, &r->batch));
    if (o.unpaired) run_answers(r, d, s, z, (double)n, train, &sums);
    else run_pairs(r, s, &N, train, &sums);
    trainer_sums(t, (double *)&sums, sizeof sums / sizeof(double));
    sums.z = z;
    return sums;
}

/* ---- online ---------------------------------------------------------------------------------------------------- */

/* Makes pairs of the scored completions of a step. nash_md: takes the policy's completions only, with the probability
 * that each is preferred. */
static void online_set(Run *r) {
    const OnlinePairs *p = &r->online;
    AnswerSet *s = &r->set;
    answer_set_clear(s);
    for (int32_t i = 0; i < p->count; i++) {
        const Answer *a = online_answer(p, i, 0), *b = online_answer(p, i, 1);
        if (isnan(a->reward) || isnan(b->reward) || (o.drop_ties && a->reward == b->reward)) continue;
        const bool nash = p->kind == ONLINE_NASH_MD, first = nash || a->reward >= b->reward;
        const Completion *w = first ? &a->completion : &b->completion, *l = first ? &b->completion : &a->completion;
        const Pair pair = {.prompt = prompts_tokens(&p->g.train, a->prompt),
                           .prompt_len = prompts_length(&p->g.train, a->prompt),
                           .chosen = w->tokens,
                           .chosen_len = w->count,
                           .rejected = l->tokens,
                           .rejected_len = nash ? 0 : l->count};
        r->probability[s->count] = (float)sigmoid((double)a->reward - b->reward); /* Bradley-Terry */
        for (int k = 0; k < 2; k++) /* xpo: the optimism term is on the reference's completion */
            r->linear[2 * s->count + k] = p->kind == ONLINE_XPO && k == first ? (float)o.xpo_alpha : 0;
        answer_set_add(s, &pair, i);
    }
}

/* Nash-MD's step on the policy's completions. */
static void run_nash(Run *r, AnswerSet *s, Sums *sums) {
    for (int32_t i = 0, next; i < s->count; i = next) {
        next = answer_set_pack(s, &r->batch, i);
        set_forward(r, s, i);
        const PreferenceBatch b = pair_batch(r, s, i, next);
        sums->loss += nash_md_loss(o.pair.beta, s->count, &b, r->probability + i, s->dlogp);
        set_count(r, s, i, next, sums);
        model_backward(&r->t.model, &r->work, &r->batch, 1.0f, s->dlogp + s->offset[3 * i], NULL, NULL);
        count_flops(r, &r->t.model, 2);
        for (int32_t k = i; k < next; k++) {
            const PreferencePair pair = preference_sums(&o.pair, &b, k - i);
            preference_count(&o.pair, &pair, &sums->pair);
        }
    }
}

/* One step on completions that the policy samples. */
static Sums run_online(Run *r) {
    AnswerSet *s = &r->set;
    Sums sums = {0};
    online_draw(&r->online);
    online_set(r);
    for (int32_t i = 0; i < s->count; i++) r->t.tokens += answer_set_rows(s, &s->pair[i]);
    if (r->kind != REFERENCE_NONE) reference_run(r, s, &r->reference.model, &r->reference.work);
    const PreferenceNormaliser N = preference_normaliser(s->offset, s->count);
    trainer_micros(&r->t, answer_set_micros(s, &r->batch));
    if (!s->count) metrics_line(&r->t.metrics, "train_dpo: warning: no pair of this step has scores that differ");
    else if (o.online_kind == ONLINE_NASH_MD) run_nash(r, s, &sums);
    else run_pairs(r, s, &N, true, &sums);
    return sums;
}

/* ---- metrics --------------------------------------------------------------------------------------------------- */

/* Whether a metric compares two completions. It has no meaning for Nash-MD, which learns from single completions. */
static bool compares(const char *name) {
    return strstr(name, "rejected") || !strcmp(name, "rewards/accuracies") || !strcmp(name, "rewards/margins");
}

/* Sets the metrics under TRL's names, with a prefix. */
static void set_metrics(Metrics *m, const char *prefix, const Sums *s) {
    LossMetric metric[PREFERENCE_METRICS];
    const int n =
        o.unpaired ? kto_metrics(&o.kto, &s->kto, s->z, metric) : preference_metrics(&o.pair, &s->pair, metric);
    char name[64];
    for (int i = 0; i <= n + 1; i++) {
        const char *what = i < n ? metric[i].name : i == n ? "entropy" : "mean_token_accuracy";
        const double value = i < n ? metric[i].value : i == n ? s->entropy / s->tokens : s->right / s->chosen_tokens;
        if (o.online && o.online_kind == ONLINE_NASH_MD && compares(what)) continue;
        snprintf(name, sizeof name, "%s%s", prefix, what);
        metrics_set(m, name, value);
    }
}

/* The fraction of pairs whose chosen completion has the higher reward; for kto, which has no pairs, the reward
 * margin. */
static double headline(const Sums *s) {
    if (!o.unpaired) return s->pair.right / fmax(s->pair.pairs, 1);
    return s->kto.reward[1] / s->kto.count[1] - s->kto.reward[0] / s->kto.count[0];
}

static void headline_text(char text[64], const Sums *s) {
    if (o.unpaired) snprintf(text, 64, "margin %7.3f | kl %.3f", headline(s), s->z);
    else
        snprintf(text, 64, "accuracy %5.1f%% | margin %7.3f", 100 * headline(s),
                 (s->pair.chosen - s->pair.rejected) / fmax(s->pair.pairs, 1));
}

/* Sets the metrics of TRL's OnlineDPOTrainer, under its names. */
static void log_online(Run *r, const OnlineSummary *w, const Sums *s) {
    Metrics *m = &r->t.metrics;
    const bool nash = o.online_kind == ONLINE_NASH_MD;
    const double answers = (nash ? 1 : 2) * fmax(s->pair.pairs, 1);
    const double kl = (s->pair.chosen_ratio + (nash ? 0 : s->pair.rejected_ratio)) / answers;
    metrics_set(m, "objective/scores", w->score);
    metrics_set(m, "objective/scores_margin", w->margin);
    metrics_set(m, "objective/kl", kl);
    metrics_set(m, "objective/entropy", -(s->pair.chosen_logp + (nash ? 0 : s->pair.rejected_logp)) / answers);
    metrics_set(m, "objective/non_score_reward", -o.pair.beta * kl);
    metrics_set(m, "objective/rlhf_reward", w->score - o.pair.beta * kl);
    metrics_set(m, "val/contain_eos_token", w->ended);
    metrics_set(m, "beta", o.pair.beta);
    if (nash) {
        double p = 0;
        for (int32_t i = 0; i < r->set.count; i++) p += r->probability[i];
        metrics_set(m, "rewards/probabilities", p / fmax(r->set.count, 1));
    }
    metrics_set(m, "ties", (double)w->ties / fmax(w->pairs, 1));
    generation_log(&r->online.g);
}

static Sums validate(Run *r, const PreferenceData *val) {
    Metrics *m = &r->t.metrics;
    char text[64];
    const double start = program_seconds();
    const Sums s = run_records(r, val, NULL, val->count, false);
    metrics_set(m, "eval_loss", s.loss);
    set_metrics(m, "eval_", &s);
    headline_text(text, &s);
    metrics_line(m, "eval  step %lld | loss %.4f | %s | %.1f s", (long long)r->t.step, s.loss, text,
                 program_seconds() - start);
    return s;
}

/* ---- the command line ------------------------------------------------------------------------------------------ */

/* Reads the next word of a comma-separated list. Returns false at its end. */
static bool next_word(const char **list, char *word, size_t size) {
    const size_t n = strcspn(*list, ",");
    if (!**list) return false;
    snprintf(word, size, "%.*s", (int)(n < size ? n : size - 1), *list);
    *list += n + ((*list)[n] == ',');
    return true;
}

static void parse_losses(void) {
    const char *list = o.losses, *weights = o.weights ? o.weights : "";
    char word[40], number[40];
    int words = 0;
    while (next_word(&list, word, sizeof word)) {
        const int unpaired = option_choice_index(KTO_LOSS_CHOICES, word),
                  loss = option_choice_index(PREFERENCE_LOSS_CHOICES, word);
        double weight = 1;
        if (unpaired < 0 && loss < 0)
            usage_error("--loss-type: '%s' is not one of " PREFERENCE_LOSS_CHOICES "|" KTO_LOSS_CHOICES, word);
        if (o.weights) {
            char *end = number;
            if (next_word(&weights, number, sizeof number)) weight = strtod(number, &end);
            if (end == number || *end || !(weight >= 0 && weight <= 1e6))
                usage_error("--loss-weights: a number from 0 to 1e6 is needed for %s", word);
        }
        if (unpaired >= 0) {
            o.unpaired = true;
            o.kto.loss = (KtoLoss)unpaired;
        } else preference_add(&o.pair, (PreferenceLoss)loss, weight);
        words++;
    }
    if (!words) usage_error("--loss-type: the list is empty");
    if (*weights) usage_error("--loss-weights: more weights than losses");
    if (o.unpaired && (words > 1 || o.weights))
        usage_error("--loss-type: kto and apo_zero_unpaired cannot be combined with other losses or weighted");
    if (o.rpo_alpha > 0) preference_add(&o.pair, PREFERENCE_SFT, o.rpo_alpha);
    o.kto.beta = o.pair.beta;
    o.pair.divergence = (Divergence)o.divergence;
}

/* Rejects an option that none of the selected losses uses. */
static void goes_with(bool given, const char *option, bool heeded, const char *losses) {
    if (given && !heeded) usage_error("%s: used only with %s", option, losses);
}

static bool smooths(void) {
    for (int i = 0; i < o.pair.losses; i++) switch (o.pair.loss[i]) {
        case PREFERENCE_SIGMOID:
        case PREFERENCE_SIGMOID_NORM:
        case PREFERENCE_EXO_PAIR:
        case PREFERENCE_ROBUST:
        case PREFERENCE_AOT:
        case PREFERENCE_AOT_UNPAIRED:
        case PREFERENCE_SIMPO:
        case PREFERENCE_CPO: return true;
        default: break;
        }
    return false;
}

static void check_options(void) {
    const PreferenceConfig *c = &o.pair, d = preference_config();
    const bool pairs = !o.unpaired, needs = o.unpaired || preference_needs_reference(c);
    const bool alpha = preference_has(c, PREFERENCE_SIMPO) || preference_has(c, PREFERENCE_CPO);
    if (!o.g.input) usage_error("-i/--input is required");
    if (!o.t.output) usage_error("-o/--output is required");
    goes_with(o.rpo_alpha > 0, "--rpo-alpha", pairs, "losses on pairs");
    goes_with(c->label_smoothing > 0, "--label-smoothing", smooths(),
              "--loss-type sigmoid, sigmoid_norm, exo_pair, robust, aot, aot_unpaired, simpo, cpo");
    goes_with(c->discopop_tau != d.discopop_tau, "--discopop-tau", preference_has(c, PREFERENCE_DISCOPOP),
              "--loss-type discopop");
    goes_with(c->dpop_lambda != d.dpop_lambda, "--dpop-lambda", preference_has(c, PREFERENCE_DPOP), "--loss-type dpop");
    goes_with(c->simpo_gamma != d.simpo_gamma, "--simpo-gamma", preference_has(c, PREFERENCE_SIMPO),
              "--loss-type simpo");
    goes_with(c->cpo_alpha != d.cpo_alpha, "--cpo-alpha", preference_has(c, PREFERENCE_CPO), "--loss-type cpo");
    goes_with(c->alpha != 0, "--alpha", alpha, "--loss-type simpo or cpo");
    goes_with(o.kto.desirable_weight != 1 || o.kto.undesirable_weight != 1, "--desirable-weight, --undesirable-weight",
              o.unpaired, "--loss-type " KTO_LOSS_CHOICES);
    goes_with(c->ld_alpha != 1, "--ld-alpha", pairs && needs, "losses on pairs that use a reference");
    goes_with(c->use_weighting, "--use-weighting", pairs && !preference_sorts(c), "losses on pairs other than aot");
    if (preference_has(c, PREFERENCE_EXO_PAIR) && !(c->label_smoothing > 0))
        usage_error("--loss-type exo_pair: needs --label-smoothing above 0; its paper uses 1e-3");
    for (int i = 0; i < c->losses; i++)
        goes_with(c->divergence != DIVERGENCE_REVERSE_KL, "--f-divergence-type",
                  preference_takes_divergence(c->loss[i]),
                  "--loss-type sigmoid, sigmoid_norm, hinge, ipo, ipo_sum, exo_pair, robust, discopop, sft");
    goes_with(c->divergence != DIVERGENCE_REVERSE_KL, "--f-divergence-type", pairs, "losses on pairs");
    if (c->divergence_alpha != d.divergence_alpha && c->divergence != DIVERGENCE_ALPHA)
        usage_error("--f-alpha-divergence-coef: used only with --f-divergence-type alpha_divergence");
    if (o.ref_logps) o.precompute = true;
    if (o.reference_free && o.unpaired) usage_error("--reference-free: kto needs a reference");
    if ((o.reference_free || !needs) && (o.precompute || o.reference || o.sync))
        usage_error("%s: no reference is used%s",
                    o.reference ? "--reference"
                    : o.sync    ? "--sync-ref-model"
                                : "--precompute-ref-log-probs",
                    o.reference_free ? " with --reference-free" : " by --loss-type");
    if (o.reference_free && !needs) usage_error("--reference-free: no reference is used by --loss-type");
    if (o.online && o.unpaired) usage_error("--online generates pairs; --loss-type kto trains on unpaired completions");
    if (o.online && o.precompute)
        usage_error("--online samples its completions during the run; --precompute-ref-log-probs needs them before it");
    if (o.online && !o.reward_model && !o.g.reward && !o.g.reward_cmd)
        usage_error("--online: give --reward-model, --reward or --reward-cmd to score the pairs");
    if (o.online && o.online_kind != ONLINE_DPO && o.reference_free)
        usage_error("--reference-free: --online-loss xpo and nash_md sample from the reference");
    if (!o.online && (o.reward_model || o.g.reward || o.g.reward_cmd || o.online_kind || o.drop_ties))
        usage_error("--reward-model, --reward, --reward-cmd, --online-loss, --drop-ties: used only with --online");
    if (o.online_kind == ONLINE_NASH_MD && (strcmp(o.losses, "sigmoid") || o.rpo_alpha > 0 || o.drop_ties))
        usage_error(
            "--online-loss nash_md has its own loss and no pairs; omit --loss-type, --rpo-alpha and --drop-ties");
    if (o.sync && o.precompute) usage_error("--sync-ref-model: cannot be used with --precompute-ref-log-probs");
    if (o.ref_logps && !strcmp(o.ref_logps, "-")) usage_error("--ref-log-probs: must be a file");
}

/* ---- the program ----------------------------------------------------------------------------------------------- */

/* Allocates the policy's activations and the batch. A micro-batch must hold the longest record. more: bytes that the
 * online run allocates in addition. */
static void open_work(Run *r, int32_t longest, size_t more) {
    Trainer *t = &r->t;
    Error e;
    r->rows = o.t.micro_tokens > longest ? (int)o.t.micro_tokens : longest;
    const bool model = needs_reference() && (!o.precompute || o.reference || o.t.resume);
    trainer_announce(t, options, r->rows, more + (model ? reference_bytes(&t->model.config, t->backend, r->rows) : 0));
    r->batch = batch_new(r->rows, r->rows, r->rows);
    if (!workspace_new(&r->work, &t->model, r->rows, r->rows, r->rows, true, (int)o.t.recompute, &e))
        die("%s; lower --micro-tokens or raise --recompute", e.text);
}

/* Warns if all labels are equal, or if their weighted ratio is outside the recommended range. */
static void check_labels(const PreferenceData *d, const KtoConfig *kto) {
    const long long n = d->count;
    long long good = 0;
    for (int64_t i = 0; i < n; i++) good += *d->good[i];
    const double balance = kto_balance(kto, (double)good, (double)(n - good));
    if (!good || good == n)
        warn("%s: all %lld completions are %s: there is nothing to distinguish", d->shard->name, n,
             good ? "good" : "bad");
    else if (balance < 1 || balance > 4.0 / 3)
        warn("%s: %lld good and %lld bad completions: their weighted ratio is %.2f, recommended is 1 to 1.33",
             d->shard->name, good, n - good, balance);
}

/* Trains on pairs or labelled completions from a shard. Returns true if a signal stopped the run. */
static bool train_on_shard(Run *r) {
    Trainer *t = &r->t;
    PreferenceData data, val = {0}, *both[] = {&data, &val};
    preference_data_open(&data, o.g.input, o.unpaired);
    if (o.g.val) preference_data_open(&val, o.g.val, o.unpaired);
    trainer_open(t, "train_dpo", &o.t, data.shard, false);
    if (t->dist.ranks > 1 && preference_sorts(&o.pair))
        die("--loss-type aot: sorts the pairs of the whole step, which works on one rank only; start one rank");
    const int32_t context = t->model.config.context;
    if (!o.max_length || o.max_length > context) o.max_length = context;
    preference_data_fit(&data, &r->set, o.max_length, (uint64_t)o.t.seed);
    if (o.unpaired) check_labels(&data, &o.kto);
    if (o.g.val) {
        trainer_check_shard(t, val.shard);
        preference_data_fit(&val, &r->set, o.max_length, (uint64_t)o.t.seed);
    }
    open_work(r, data.longest > val.longest ? data.longest : val.longest, 0);
    const int64_t most = val.count > o.batch ? val.count : o.batch;
    r->cost = (double *)xcalloc((size_t)most, sizeof *r->cost);
    r->owner = (int32_t *)xcalloc((size_t)most, sizeof *r->owner);
    open_reference(r, both, o.g.val ? 2 : 1);

    /* The run takes `left` records, in steps of --per-device-train-batch-size. */
    int64_t *records = (int64_t *)xmalloc((size_t)o.batch * sizeof *records);
    int64_t left = o.t.steps ? INT64_MAX : (int64_t)ceil(o.g.epochs * (double)data.count);
    trainer_schedule(t, o.t.steps ? o.t.steps : (left + o.batch - 1) / o.batch);
    Cursor cursor = cursor_new(data.count, (uint64_t)o.t.seed);
    if (!cursor_resume(&cursor, t->state)) die("%s: the state was made with another --max-length", o.t.resume);
    left -= cursor_taken(&cursor);

    bool stopped = false;
    const Sums before = o.g.val && !t->step ? validate(r, &val) : (Sums){0};
    while (t->step < t->steps && !stopped) {
        int64_t n = 0;
        trainer_begin_step(t);
        while (n < o.batch && n < left) records[n++] = cursor_next(&cursor);
        left -= n;
        const Sums sums = run_records(r, &data, records, n, true);
        trainer_update(t, sums.loss);
        if (o.sync && t->step % o.sync_steps == 0) reference_follow(r);

        const double epoch = cursor_epochs(&cursor);
        const double seconds = program_seconds() - t->step_start;
        metrics_set(&t->metrics, "epoch", epoch);
        set_metrics(&t->metrics, "", &sums);
        const bool last = t->step == t->steps;
        if (o.g.val && (last || t->step % o.g.eval_steps == 0)) {
            const Sums after = validate(r, &val);
            char a[32], b[32];
            const char *form = o.unpaired ? "%.3f" : "%.1f %%";
            const double scale = o.unpaired ? 1 : 100;
            snprintf(b, sizeof b, form, scale * headline(&before));
            snprintf(a, sizeof a, form, scale * headline(&after));
            if (last)
                metrics_final(&t->metrics, o.unpaired ? "held-out margin" : "held-out accuracy",
                              before.records > 0 ? b : NULL, a);
        }
        char text[64];
        headline_text(text, &sums);
        trainer_log(t, sums.loss, "%s | epoch %.2f | %.0f records/s", text, epoch, (double)n / seconds);
        cursor_save(&cursor, t->state);
        stopped = trainer_should_stop(t, 1);
        reference_forget_stale(r);
    }
    free(r->cost), free(r->owner), free(records);
    cursor_free(&cursor);
    preference_data_close(&data);
    if (o.g.val) preference_data_close(&val);
    return stopped;
}

/* Trains on pairs that are sampled and scored in each step. Returns true if a signal stopped the run. */
static bool train_online(Run *r) {
    Trainer *t = &r->t;
    OnlinePairs *p = &r->online;
    Generation *g = &p->g;
    o.g.prompts = o.batch;
    *p = (OnlinePairs){.kind = (OnlineKind)o.online_kind, .reward_model = o.reward_model};
    p->missing_eos_penalty = o.missing_eos_penalty;
    p->mixture_coef = o.mixture_coef;
    online_open_data(p, &o.g, t, (uint64_t)o.t.seed);
    trainer_open(t, "train_dpo", &o.t, &g->train.shard, false);
    if (t->dist.ranks > 1) die("--online: cannot distribute its work over ranks; start one rank");
    online_open_prompts(p);
    open_work(r, generation_longest_prompt(g) * (o.sharing ? 1 : 2) + 2 * (int)o.g.max_completion, online_bytes(p));
    open_reference(r, NULL, 0);
    online_open(p, &r->reference.model);
    r->linear = (float *)xcalloc(2 * (size_t)o.batch, sizeof(float));
    r->probability = (float *)xcalloc((size_t)o.batch, sizeof(float));

    trainer_schedule(t, o.t.steps ? o.t.steps : (int64_t)ceil(o.g.epochs * (double)g->train.count / (double)o.batch));
    Evaluation before = {0}, after = {0};
    if (!t->step) {
        generation_show(g, "before");
        if (o.g.val) before = generation_evaluate(g, "before");
    }
    bool stopped = false;
    while (t->step < t->steps && !stopped) {
        trainer_begin_step(t);
        const Sums sums = run_online(r);
        const OnlineSummary judged = online_summary(p);
        trainer_update(t, sums.loss);
        if (o.sync && t->step % o.sync_steps == 0) reference_follow(r);

        if (sums.records > 0) set_metrics(&t->metrics, "", &sums);
        log_online(r, &judged, &sums);
        if (o.g.val && (t->step == t->steps || t->step % o.g.eval_steps == 0)) {
            char when[32];
            snprintf(when, sizeof when, "step %lld", (long long)t->step);
            after = generation_evaluate(g, when);
        }
        trainer_log(t, sums.loss, "score %7.3f | margin %.3f | length %.1f | %.0f tok/s", judged.score, judged.margin,
                    judged.length, judged.length * 2 * p->count / (g->gen_seconds + 1e-9));
        online_forget(p);
        generation_save(g);
        stopped = trainer_should_stop(t, 1);
        reference_forget_stale(r);
    }
    if (!stopped) {
        generation_show(g, "after");
        if (o.g.val) generation_compare(g, &before, &after);
    }
    online_close(p);
    free(r->linear), free(r->probability);
    return stopped;
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    o.t = trainer_defaults(1e-6);
    o.g = generation_defaults();
    o.pair = preference_config();
    o.kto = kto_config();
    o.batch = 8;
    o.g.epochs = 3;
    o.max_length = 1024;
    o.g.eval_steps = 100;
    o.losses = "sigmoid";
    o.sharing = true;
    o.sync_alpha = 0.6;
    o.sync_steps = 512;
    o.g.max_completion = 64;
    o.g.temperature = 0.9;
    o.xpo_alpha = 1e-5;
    o.mixture_coef = 0.5;
    options_parse_all(options, &about, argc, argv);
    parse_losses();
    check_options();
    program_start();
    const char *inputs[] = {o.g.input, o.g.val, o.t.checkpoint, o.t.resume, o.reference, o.reward_model};
    trainer_check_files(&o.t, inputs, 6, NULL);

    r->set = (AnswerSet){.shared = o.sharing, .prompts = preference_has(&o.pair, PREFERENCE_ORPO)};
    const bool stopped = o.online ? train_online(r) : train_on_shard(r);
    if (r->kind == REFERENCE_LIVE) reference_close(&r->reference);
    workspace_free(&r->work, &r->t.model);
    batch_free(&r->batch);
    answer_set_free(&r->set), answer_set_free(&r->mismatch);
    free(r->written);
    trainer_close(&r->t, stopped);
    return 0;
}
