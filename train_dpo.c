/* train_dpo.c - learning from preferences directly: DPO, its relatives, and KTO, from shards or from the policy's own answers.
 *
 *   preference shard   --loss-type sigmoid, ipo, ... (llmc/loss/preference.h has them all), several with --loss-weights
 *   unpaired shard     --loss-type kto or apo_zero_unpaired (llmc/loss/kto.h)
 *   prompt shard       --online: pairs are drawn from the policy and judged as they are needed (llmc/train/online_pairs.h)
 *
 * One optimizer step takes --per-device-train-batch-size pairs or answers, packed without padding into micro-batches of
 * --micro-tokens; both answers of a pair hang on one copy of their prompt (--no-prefix-sharing: each has its own). Neither
 * changes the result but by rounding: normalisers are those of the whole step, and so are the losses that couple pairs.
 *
 *   1. reference   log ref of every answer: a frozen model beside the policy, or computed once and kept (ref_logps.h)
 *   2. forward     log pi of every answer; KTO first, of the mismatched answers of the whole step: its reference point z
 *   3. loss        a function of these alone, with its gradient
 *   4. backward    micro-batch by micro-batch; where the loss sorts the step's pairs (aot), 2 is done for all of them first
 *
 *     ./train_dpo -c sft.bin -i prefs.shard -j held_out.shard -o dpo.bin
 *     ./train_dpo -c sft.bin -i prompts.shard -o online.bin --online -r rm.bin
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
    OPTION_GROUP("Data"),
    OPTION_TEXT("input", 'i', &o.g.input, "FILE", "preference shard; kto: unpaired shard; --online: prompt shard"),
    OPTION_TEXT("val", 'j', &o.g.val, "FILE", "held-out shard of the same kind: loss, accuracy, margin"),
    OPTION_INT("per-device-train-batch-size", 'd', &o.batch, 1, 1 << 24,
               "pairs, answers or prompts of one optimizer step"),
    OPTION_INT("max-length", 0, &o.max_length, 0, 1 << 20,
               "most tokens of a prompt with an answer, which is cut at its end; 0: the model's context"),
    OPTION_REAL("num-train-epochs", 'e', &o.g.epochs, 0.001, 1e6, "passes over the shard"),
    OPTION_INT("max-steps", 'x', &o.t.steps, 0, 1e9, "optimizer steps; 0: as many as the epochs take"),
    OPTION_FLAG("prefix-sharing", 0, &o.sharing, "give each answer of a pair a prompt of its own"),
    OPTION_GROUP("Loss"),
    OPTION_TEXT("loss-type", 0, &o.losses, "LIST", PREFERENCE_LOSS_CHOICES "; or kto|apo_zero_unpaired"),
    OPTION_TEXT("loss-weights", 0, &o.weights, "LIST", "a weight for each of them (default: 1)"),
    OPTION_REAL("beta", 0, &o.pair.beta, 1e-9, 1e6, "how dear it is to leave the reference"),
    OPTION_REAL("label-smoothing", 0, &o.pair.label_smoothing, 0, 0.499,
                "the chance that a label is wrong; with sigmoid: conservative DPO"),
    OPTION_CHOICE("f-divergence-type", 0, &o.divergence, DIVERGENCE_CHOICES, "what keeps to the reference"),
    OPTION_REAL("f-alpha-divergence-coef", 0, &o.pair.divergence_alpha, -100, 100, "alpha of alpha_divergence"),
    OPTION_REAL("ld-alpha", 0, &o.pair.ld_alpha, 0, 1,
                "LD-DPO: weight of tokens past the shorter answer's length; 1: as others"),
    OPTION_FLAG("use-weighting", 0, &o.pair.use_weighting, "WPO: weight pairs by how likely the policy finds them"),
    OPTION_REAL("rpo-alpha", 0, &o.rpo_alpha, 0, 1e6, "add so much of sft"),
    OPTION_REAL("discopop-tau", 0, &o.pair.discopop_tau, 1e-6, 1e6, "temperature of discopop's mixture"),
    OPTION_REAL("dpop-lambda", 0, &o.pair.dpop_lambda, 0, 1e6, "dpop: price of a less likely chosen answer"),
    OPTION_REAL("simpo-gamma", 0, &o.pair.simpo_gamma, -1e6, 1e6, "simpo: margin that is wanted"),
    OPTION_REAL("cpo-alpha", 0, &o.pair.cpo_alpha, 0, 1e6, "cpo: weight of sft in it"),
    OPTION_REAL("alpha", 0, &o.pair.alpha, -100, 100, "simpo, cpo: AlphaPO's shape of the reward; 0: log-probability"),
    OPTION_REAL("desirable-weight", 0, &o.kto.desirable_weight, 0, 1e6, "kto: of good answers"),
    OPTION_REAL("undesirable-weight", 0, &o.kto.undesirable_weight, 0, 1e6, "kto: of bad answers"),
    OPTION_GROUP("Reference"),
    OPTION_TEXT("reference", 0, &o.reference, "FILE", "reference model (default: the one of -c)"),
    OPTION_FLAG("reference-free", 0, &o.reference_free, "do without: all its log-probabilities count as 0"),
    OPTION_FLAG("precompute-ref-log-probs", 0, &o.precompute, "compute them once, then drop the reference"),
    OPTION_TEXT("ref-log-probs", 0, &o.ref_logps, "FILE", "the same, kept in this file; it is used where it is there"),
    OPTION_FLAG("sync-ref-model", 0, &o.sync, "TR-DPO: let the reference follow the policy"),
    OPTION_REAL("ref-model-mixup-alpha", 0, &o.sync_alpha, 0, 1, "reference = alpha policy + (1 - alpha) reference"),
    OPTION_INT("ref-model-sync-steps", 0, &o.sync_steps, 1, 1e9, "every so many steps"),
    OPTION_GROUP("Online"),
    OPTION_FLAG("online", 0, &o.online, "draw pairs from the policy and let a reward model or verifiers judge"),
    OPTION_CHOICE("online-loss", 0, &o.online_kind, ONLINE_CHOICES, "who answers, and what is learnt of it"),
    OPTION_TEXT("reward-model", 'r', &o.reward_model, "FILE", "judge: a checkpoint that train_rm wrote"),
    GENERATION_REWARD_OPTIONS(o.g),
    OPTION_REAL("missing-eos-penalty", 0, &o.missing_eos_penalty, 0, 1e9,
                "taken from the score of a completion that did not end"),
    OPTION_FLAG("drop-ties", 0, &o.drop_ties, "leave out pairs of equal scores; else the first answer wins"),
    OPTION_REAL("xpo-alpha", 0, &o.xpo_alpha, 0, 1e6, "xpo: weight of its optimism"),
    OPTION_REAL("mixture-coef", 0, &o.mixture_coef, 0, 1, "nash_md: the reference's share in the mixture"),
    OPTION_INT("max-prompt-length", 0, &o.g.max_prompt, 1, 1 << 20, "leave out prompts of more tokens"),
    OPTION_INT("max-completion-length", 'g', &o.g.max_completion, 1, 1 << 20, "most tokens of a completion"),
    OPTION_REAL("temperature", 0, &o.g.temperature, 0.01, 100, "of sampling"),
    OPTION_INT("top-k", 0, &o.g.top_k, 0, 1 << 22, "sample among the k likeliest tokens; 0: all"),
    OPTION_REAL("top-p", 0, &o.g.top_p, 0.001, 1, "sample among the likeliest that weigh this much together"),
    OPTION_REAL("min-p", 0, &o.g.min_p, 0, 1, "leave out tokens less likely than this share of the likeliest"),
    OPTION_REAL("repetition-penalty", 0, &o.g.repetition_penalty, 0.01, 100, "on tokens already seen; 1: none"),
    OPTION_INT("slots", 0, &o.g.slots, 1, 65536, "completions that are sampled at once"),
    TRAINER_MODEL_OPTIONS_WITH(o.t, 0),
    TRAINER_OPTIMIZER_OPTIONS(o.t),
    TRAINER_OUTPUT_OPTIONS(o.t),
    OPTION_GROUP("Evaluation"),
    OPTION_INT("eval-steps", 'v', &o.g.eval_steps, 1, 1e9, "held-out figures every so many steps, and at both ends"),
    OPTION_INT("eval-prompts", 'm', &o.g.eval_prompts, 0, 1e9, "--online: how many held-out prompts; 0: all"),
    OPTION_INT("sample-count", 's', &o.g.sample_count, 0, 256, "--online: completions to show before and after"),
    OPTION_END};

static const OptionAbout about = {
    "-c MODEL -i SHARD -o OUT [options]",
    "Trains a model on preferences: DPO and its relatives on pairs, KTO on answers that are good or bad.\n\n"
    "  ./data/make_shard -i prefs.jsonl -o prefs.shard -f 0.1 -v held_out.shard\n"
    "  ./train_dpo -c sft.bin -i prefs.shard -j held_out.shard -o dpo.bin\n"
    "  ./train_dpo -c sft.bin -i prefs.shard -o rpo.bin --loss-type sigmoid,sft --loss-weights 1,0.2\n"
    "  ./train_dpo -c sft.bin -i prefs.shard -o simpo.bin --loss-type simpo --beta 2.5 --simpo-gamma 1.375\n"
    "  ./train_dpo -c sft.bin -i labelled.shard -o kto.bin --loss-type kto\n"
    "  ./train_dpo -c sft.bin -i prompts.shard -o online.bin --online -r rm.bin"};

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
    char *written, *stale; /* files of a reference that follows the policy: of the last state and of the one before */
    double *cost;          /* of sharing a step among ranks */
    int32_t *owner;
    OnlinePairs online;
    float *linear, *probability; /* (2 prompts), (prompts): xpo's optimism, nash_md's preferences */
} Run;

/* What a pass found, over all ranks; sums until sums_finish(). */
typedef struct Sums {
    PreferenceStats pair;
    KtoStats kto;
    double loss, entropy, tokens, right, chosen_tokens, records;
    double z; /* kto: not a sum */
} Sums;

static void count_flops(Run *r, const GPT2 *m, double passes) {
    r->t.flops += passes * gpt2_flops(&m->config, r->batch.rows, r->batch.targets, batch_pairs(&r->batch));
}

/* One forward pass over the families in r->batch, which begin with `first`: log-probabilities and what is shown of them. */
static void set_forward(Run *r, AnswerSet *s, int32_t first) {
    const int32_t at = s->offset[3 * first];
    const GPT2Output out = {.logp = s->logp + at, .entropy = s->entropy + at, .argmax = s->argmax + at};
    gpt2_forward(&r->t.model, &r->work, &r->batch, 1.0f, &out);
    if (o.pair.use_weighting) answer_log_square(&r->t.model, &r->work, &r->batch, out.logp, s->square + at);
    count_flops(r, &r->t.model, 1);
}

static void set_forward_all(Run *r, AnswerSet *s) {
    for (int32_t i = 0, next; i < s->count; i = next) {
        next = answer_set_pack(s, &r->batch, i);
        set_forward(r, s, i);
    }
}

/* Entropy and accuracy of the answers' tokens of families [first, next), whose targets are in r->batch. */
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

/* log ref of all tokens of the set by a model. */
static void reference_run(Run *r, AnswerSet *s, const GPT2 *m, const Workspace *w) {
    for (int32_t i = 0, next; i < s->count; i = next) {
        next = answer_set_pack(s, &r->batch, i);
        gpt2_forward(m, w, &r->batch, 1.0f, &(GPT2Output){.logp = s->ref + s->offset[3 * i]});
        count_flops(r, m, 1);
    }
}

/* log ref of the set, records of d. */
static void reference_of(Run *r, const PreferenceData *d, AnswerSet *s, bool mismatch) {
    if (r->kind == REFERENCE_LIVE) reference_run(r, s, &r->reference.model, &r->reference.work);
    for (int32_t i = 0; r->kind == REFERENCE_TABLE && i < s->count; i++) {
        const int64_t k = s->record[i] + (mismatch ? d->count : 0);
        memcpy(s->ref + s->offset[3 * i + 1], d->ref + d->at[k], (size_t)(d->at[k + 1] - d->at[k]) * sizeof *s->ref);
    }
}

/* Computes log ref of all answers of d. */
static void reference_compute(Run *r, PreferenceData *d, const GPT2 *m, const Workspace *w) {
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

/* Takes the values from the file, or says that they are of something else. */
static void reference_take(RefLogps *l, PreferenceData *d) {
    const int64_t tokens = d->at[d->items];
    const float *logp = ref_logps_find(l, d->fingerprint, (uint64_t)tokens);
    if (!logp)
        die("%s: it was made for other records than those of %s, or with another --max-length%s; remove it to make it "
            "anew",
            o.ref_logps, d->shard->name, o.unpaired ? " or --seed" : "");
    d->ref = (float *)xmalloc((size_t)tokens * sizeof *d->ref);
    memcpy(d->ref, logp, (size_t)tokens * sizeof *d->ref);
}

/* Log-probabilities that are computed once: from the file where it is there, else by the reference, which goes then. */
static void reference_precompute(Run *r, PreferenceData *data[], int count) {
    Error e;
    RefLogps l = {0};
    Trainer *t = &r->t;
    const bool there = o.ref_logps && !access(o.ref_logps, F_OK), own = !o.reference && !t->o.resume;
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
        die("%s: it is not of the reference that the run began with", there ? o.ref_logps : "--reference");
    if (there && model && l.model != model)
        die("%s: it was made with another model than the reference; remove it to make it anew", o.ref_logps);
    json_object_set_new(t->state, "ref_logps", json_string(name));
    for (int i = 0; i < count; i++) {
        if (there) reference_take(&l, data[i]);
        else if (own) reference_compute(r, data[i], &t->model, &r->work);
        else reference_compute(r, data[i], &r->reference.model, &r->reference.work);
    }
    if (r->reference.model.backend) reference_close(&r->reference);
    ref_logps_free(&l);
    if (!there && !gpt2_sync(&t->model, &e)) die("%s", e.text);
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

/* A reference that follows the policy is in a file beside the state that needs it. */
static char *reference_path(const char *state, int64_t step) {
    const size_t size = strlen(state) + 40;
    char *path = (char *)xmalloc(size);
    snprintf(path, size, "%s.reference-%lld", state, (long long)step);
    return path;
}

/* The trainer's hook: before a state is written. */
static void reference_save(void *run, const char *state) {
    Run *r = (Run *)run;
    Error e;
    free(r->stale);
    r->stale = r->written, r->written = reference_path(state, r->t.step);
    json_object_del(r->t.state, "reference"); /* its file is found by its name */
    if (r->t.dist.rank) return;
    if (!model_save(&r->reference.model, &r->t.file, r->written, false, NULL, NULL, &e)) die("%s", e.text);
}

/* After the state is there: the reference of the one before is not needed any more. */
static void reference_forget_stale(Run *r) {
    if (r->stale && strcmp(r->stale, r->written) && !r->t.dist.rank) unlink(r->stale);
    free(r->stale);
    r->stale = NULL;
}

/* TR-DPO (2404.09656), soft update: ref = alpha pi + (1 - alpha) ref. */
static void reference_follow(Run *r) {
    enum { CHUNK = 1 << 20 };
    GPT2 *ref = &r->reference.model;
    const GPT2 *policy = &r->t.model;
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

/* Does any model stand beside the policy? */
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
    r->written = o.sync && r->t.o.resume ? reference_path(r->t.o.resume, r->t.step) : NULL;
    reference_open(&r->reference, &r->t, r->written ? r->written : o.reference, r->rows, "--loss-type");
    if (o.sync && r->reference.model.parameters != r->t.model.parameters)
        die("--sync-ref-model: the reference has another shape than the model");
    if (o.sync) r->t.save_beside = reference_save, r->t.beside = r;
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

/* The pairs of the set: their loss, and the gradients of the model when `train`. N: of the whole step. */
static void run_pairs(Run *r, AnswerSet *s, const PreferenceNormaliser *N, bool train, Sums *sums) {
    const bool sorts = preference_sorts(&o.pair), at_once = answer_set_micros(s, &r->batch) == 1;
    const bool first_all = sorts && !at_once; /* no gradient is known before all log-probabilities are */
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
        if (first_all) gpt2_forward_backward(&r->t.model, &r->work, &r->batch, 1.0f, dlogp, &(GPT2Output){0});
        else gpt2_backward(&r->t.model, &r->work, &r->batch, 1.0f, dlogp, NULL, NULL);
        count_flops(r, &r->t.model, first_all ? 3 : 2);
    }
}

/* The same of answers with labels. z: of the whole step. */
static void run_answers(Run *r, const PreferenceData *d, AnswerSet *s, double z, double total, bool train, Sums *sums) {
    int32_t *offset = (int32_t *)xmalloc(((size_t)s->count + 1) * sizeof *offset);
    uint8_t *good = (uint8_t *)xmalloc((size_t)s->count + 1);
    for (int32_t i = 0; i < s->count; i++) offset[i] = s->offset[3 * i], good[i] = *d->good[s->record[i]];
    offset[s->count] = answer_set_tokens(s);
    for (int32_t i = 0, next; i < s->count; i = next) {
        next = answer_set_pack(s, &r->batch, i);
        set_forward(r, s, i);
        const KtoBatch b = {
            .answers = next - i, .offset = offset + i, .good = good + i, .logp = s->logp, .ref_logp = s->ref};
        sums->loss += kto_loss(&o.kto, z, total, &b, s->dlogp, &sums->kto);
        set_count(r, s, i, next, sums);
        if (!train) continue;
        gpt2_backward(&r->t.model, &r->work, &r->batch, 1.0f, s->dlogp + offset[i], NULL, NULL);
        count_flops(r, &r->t.model, 2);
    }
    free(offset), free(good);
}

/* z of the whole step: the mean log-ratio of its mismatched answers. */
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

/* Runs records records[0..n), or all of them in order (NULL), each on one of the ranks. */
static Sums run_records(Run *r, const PreferenceData *d, const int64_t *records, int64_t n, bool train) {
    Trainer *t = &r->t;
    AnswerSet *s = &r->set;
    Sums sums = {0};
    PreferenceNormaliser N = {.pairs = (double)n};
    answer_set_clear(s), answer_set_clear(&r->mismatch);
    for (int64_t i = 0; i < n; i++) r->cost[i] = answer_set_rows(s, &d->pair[records ? records[i] : i]);
    trainer_share(t, r->cost, n, r->owner);
    for (int64_t i = 0; i < n; i++) {
        const int64_t record = records ? records[i] : i;
        const Pair *p = &d->pair[record];
        N.chosen_tokens += p->chosen_len, N.prompt_tokens += s->prompts ? p->prompt_len - 1 : 0;
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

/* The judged answers of a step as pairs; nash_md: the policy's own, with the probability that each is preferred. */
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
        r->probability[s->count] = (float)preference_sigmoid((double)a->reward - b->reward); /* Bradley-Terry */
        for (int k = 0; k < 2; k++) /* the reference's answer gets the optimism */
            r->linear[2 * s->count + k] = p->kind == ONLINE_XPO && k == first ? (float)o.xpo_alpha : 0;
        answer_set_add(s, &pair, i);
    }
}

/* Nash-MD's step on the policy's answers. */
static void run_nash(Run *r, AnswerSet *s, Sums *sums) {
    for (int32_t i = 0, next; i < s->count; i = next) {
        next = answer_set_pack(s, &r->batch, i);
        set_forward(r, s, i);
        const PreferenceBatch b = pair_batch(r, s, i, next);
        sums->loss += nash_md_loss(o.pair.beta, s->count, &b, r->probability + i, s->dlogp);
        set_count(r, s, i, next, sums);
        gpt2_backward(&r->t.model, &r->work, &r->batch, 1.0f, s->dlogp + s->offset[3 * i], NULL, NULL);
        count_flops(r, &r->t.model, 2);
        for (int32_t k = i; k < next; k++) {
            const PreferencePair pair = preference_sums(&o.pair, &b, k - i);
            preference_count(&o.pair, &pair, &sums->pair);
        }
    }
}

/* One step on answers of its own. */
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

/* Nash-MD learns from single answers: what compares two has no meaning there. */
static bool compares(const char *name) {
    return strstr(name, "rejected") || !strcmp(name, "rewards/accuracies") || !strcmp(name, "rewards/margins");
}

/* TRL's names, with a prefix. */
static void set_metrics(Metrics *m, const char *prefix, const Sums *s) {
    PreferenceMetric metric[PREFERENCE_METRICS];
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

/* The share of pairs whose chosen answer has the higher reward; kto: the margin, for it has no pairs. */
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

/* TRL's names of what OnlineDPOTrainer logs. */
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

/* The next word of a comma list, or false at its end. */
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
        if (unpaired >= 0) o.unpaired = true, o.kto.loss = (KtoLoss)unpaired;
        else preference_add(&o.pair, (PreferenceLoss)loss, weight);
        words++;
    }
    if (!words) usage_error("--loss-type: it is empty");
    if (*weights) usage_error("--loss-weights: more weights than losses");
    if (o.unpaired && (words > 1 || o.weights)) usage_error("--loss-type: kto and apo_zero_unpaired stand alone");
    if (o.rpo_alpha > 0) preference_add(&o.pair, PREFERENCE_SFT, o.rpo_alpha);
    o.kto.beta = o.pair.beta, o.pair.divergence = (Divergence)o.divergence;
}

/* Refuses an option that no loss of the list heeds. */
static void goes_with(bool given, const char *option, bool heeded, const char *losses) {
    if (given && !heeded) usage_error("%s: goes with --loss-type %s", option, losses);
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
    if (!o.g.input) usage_error("-i/--input: which shard?");
    if (!o.t.output) usage_error("-o/--output: where to?");
    goes_with(o.rpo_alpha > 0, "--rpo-alpha", pairs, "of pairs");
    goes_with(c->label_smoothing > 0, "--label-smoothing", smooths(),
              "sigmoid, sigmoid_norm, exo_pair, robust, aot, aot_unpaired, simpo, cpo");
    goes_with(c->discopop_tau != d.discopop_tau, "--discopop-tau", preference_has(c, PREFERENCE_DISCOPOP), "discopop");
    goes_with(c->dpop_lambda != d.dpop_lambda, "--dpop-lambda", preference_has(c, PREFERENCE_DPOP), "dpop");
    goes_with(c->simpo_gamma != d.simpo_gamma, "--simpo-gamma", preference_has(c, PREFERENCE_SIMPO), "simpo");
    goes_with(c->cpo_alpha != d.cpo_alpha, "--cpo-alpha", preference_has(c, PREFERENCE_CPO), "cpo");
    goes_with(c->alpha != 0, "--alpha", alpha, "simpo or cpo");
    goes_with(o.kto.desirable_weight != 1 || o.kto.undesirable_weight != 1, "--desirable-weight, --undesirable-weight",
              o.unpaired, KTO_LOSS_CHOICES);
    goes_with(c->ld_alpha != 1, "--ld-alpha", pairs && needs, "of pairs and a reference");
    goes_with(c->use_weighting, "--use-weighting", pairs && !preference_sorts(c), "of pairs, but for aot");
    if (preference_has(c, PREFERENCE_EXO_PAIR) && !(c->label_smoothing > 0))
        usage_error("--loss-type exo_pair: needs --label-smoothing above 0; its paper has 1e-3");
    for (int i = 0; i < c->losses; i++)
        goes_with(c->divergence != DIVERGENCE_REVERSE_KL, "--f-divergence-type",
                  preference_takes_divergence(c->loss[i]),
                  "sigmoid, sigmoid_norm, hinge, ipo, ipo_sum, exo_pair, robust, discopop, sft alone");
    goes_with(c->divergence != DIVERGENCE_REVERSE_KL, "--f-divergence-type", pairs, "of pairs");
    if (c->divergence_alpha != d.divergence_alpha && c->divergence != DIVERGENCE_ALPHA)
        usage_error("--f-alpha-divergence-coef: goes with --f-divergence-type alpha_divergence");
    if (o.ref_logps) o.precompute = true;
    if (o.reference_free && o.unpaired) usage_error("--reference-free: kto needs a reference");
    if ((o.reference_free || !needs) && (o.precompute || o.reference || o.sync))
        usage_error("%s: no reference is used%s",
                    o.reference ? "--reference"
                    : o.sync    ? "--sync-ref-model"
                                : "--precompute-ref-log-probs",
                    o.reference_free ? " with --reference-free" : " by --loss-type");
    if (o.reference_free && !needs) usage_error("--reference-free: no reference is used by --loss-type");
    if (o.online && o.unpaired) usage_error("--online: makes pairs; --loss-type kto wants answers without");
    if (o.online && o.precompute)
        usage_error("--online: its answers are not known before: no --precompute-ref-log-probs");
    if (o.online && !o.reward_model && !o.g.reward && !o.g.reward_cmd)
        usage_error("--online: who judges? -r/--reward-model, --reward or --reward-cmd");
    if (o.online && o.online_kind != ONLINE_DPO && o.reference_free)
        usage_error("--reference-free: --online-loss xpo and nash_md draw from the reference");
    if (!o.online && (o.reward_model || o.g.reward || o.g.reward_cmd || o.online_kind || o.drop_ties))
        usage_error("--reward-model, --reward, --reward-cmd, --online-loss, --drop-ties: go with --online");
    if (o.online_kind == ONLINE_NASH_MD && (strcmp(o.losses, "sigmoid") || o.rpo_alpha > 0 || o.drop_ties))
        usage_error("--online-loss nash_md: it has a loss of its own and no pairs");
    if (o.sync && o.precompute) usage_error("--sync-ref-model: goes without --precompute-ref-log-probs");
    if (o.ref_logps && !strcmp(o.ref_logps, "-")) usage_error("--ref-log-probs: a file is needed");
}

/* ---- the program ----------------------------------------------------------------------------------------------- */

/* The activations of the policy and a batch, for micro-batches that hold at least the longest record. */
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

/* Warns if the labels of unpaired answers teach nothing, or if they are far from the balance that is advised. */
static void check_labels(const PreferenceData *d, const KtoConfig *kto) {
    const long long n = d->count;
    long long good = 0;
    for (int64_t i = 0; i < n; i++) good += *d->good[i];
    const double balance = kto_balance(kto, (double)good, (double)(n - good));
    if (!good || good == n)
        warn("%s: all %lld answers are %s: there is nothing to tell apart", d->shard->name, n, good ? "good" : "bad");
    else if (balance < 1 || balance > 4.0 / 3)
        warn("%s: %lld good and %lld bad answers: weighted they are as %.2f to 1, 1 to 1.33 is advised", d->shard->name,
             good, n - good, balance);
}

/* Pairs or labelled answers from a shard. */
static bool train_on_shard(Run *r) {
    Trainer *t = &r->t;
    PreferenceData data, val = {0}, *both[] = {&data, &val};
    preference_data_open(&data, o.g.input, o.unpaired);
    if (o.g.val) preference_data_open(&val, o.g.val, o.unpaired);
    trainer_open(t, "train_dpo", &o.t, data.shard, false);
    if (t->dist.ranks > 1 && preference_sorts(&o.pair)) die("--loss-type aot: it sorts the whole step; start one rank");
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

    /* the run: so many records, in steps of --per-device-train-batch-size */
    int64_t *records = (int64_t *)xmalloc((size_t)o.batch * sizeof *records);
    int64_t left = o.t.steps ? INT64_MAX : (int64_t)ceil(o.g.epochs * (double)data.count);
    trainer_schedule(t, o.t.steps ? o.t.steps : (left + o.batch - 1) / o.batch);
    Cursor cursor = cursor_new(data.count, (uint64_t)o.t.seed);
    if (!cursor_resume(&cursor, t->state)) die("%s: the state was made with another --max-length", o.t.resume);
    left -= cursor_taken(&cursor);

    bool stopped = false;
    const Sums before = o.g.val && !t->step ? validate(r, &val) : (Sums){0};
    while (t->step < t->o.steps && !stopped) {
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
        const bool last = t->step == t->o.steps;
        if (o.g.val && (last || t->step % o.g.eval_steps == 0)) {
            const Sums after = validate(r, &val);
            char a[32], b[32];
            const char *form = o.unpaired ? "%.3f" : "%.1f %%";
            const double scale = o.unpaired ? 1 : 100;
            snprintf(b, sizeof b, form, scale * headline(&before)),
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

/* Pairs that are drawn and judged, step by step. */
static bool train_online(Run *r) {
    Trainer *t = &r->t;
    OnlinePairs *p = &r->online;
    Generation *g = &p->g;
    o.g.prompts = o.batch;
    *p = (OnlinePairs){.kind = (OnlineKind)o.online_kind, .reward_model = o.reward_model};
    p->missing_eos_penalty = o.missing_eos_penalty, p->mixture_coef = o.mixture_coef;
    online_open_data(p, &o.g, t, (uint64_t)o.t.seed);
    trainer_open(t, "train_dpo", &o.t, &g->train.shard, false);
    if (t->dist.ranks > 1) die("--online: it does not know how to share its work among ranks; start one");
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
    while (t->step < t->o.steps && !stopped) {
        trainer_begin_step(t);
        const Sums sums = run_online(r);
        const OnlineSummary judged = online_summary(p);
        trainer_update(t, sums.loss);
        if (o.sync && t->step % o.sync_steps == 0) reference_follow(r);

        if (sums.records > 0) set_metrics(&t->metrics, "", &sums);
        log_online(r, &judged, &sums);
        if (o.g.val && (t->step == t->o.steps || t->step % o.g.eval_steps == 0)) {
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
    o.t = trainer_defaults(1e-6), o.g = generation_defaults(), o.pair = preference_config(), o.kto = kto_config();
    o.batch = 8, o.g.epochs = 3, o.max_length = 1024, o.g.eval_steps = 100, o.losses = "sigmoid", o.sharing = true;
    o.sync_alpha = 0.6, o.sync_steps = 512;
    o.g.max_completion = 64, o.g.temperature = 0.9, o.xpo_alpha = 1e-5, o.mixture_coef = 0.5;
    if (options_parse(options, &about, argc, argv) < argc) usage_error("%s: unexpected word", argv[argc - 1]);
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
