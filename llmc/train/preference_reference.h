/* preference_reference.h - the reference of the losses on preferences: a model, or log-probabilities computed
 * beforehand.
 *
 * A live reference is a second model in memory (reference.h), which may follow the policy. With
 * --precompute-ref-log-probs the log-probabilities of all completions in the shards are computed once, by the model of
 * -c or of --reference, which is then freed. --ref-log-probs names a file (ref_logps.h) from which they are read, or to
 * which they are written if it does not exist. A file is tied to the model, to the shards' contents and to
 * --max-length; any other is rejected. Errors end the program (see trainer.h).
 *
 *     PreferenceReference r = {.o = &o.r};
 *     PreferenceData *shards[] = {&train, &held_out};
 *     preference_reference_open(&r, &trainer, &work, &batch, true, 512, shards, 2);
 *     preference_reference_run(&r, &batch, &train, &set, false);                 // fills set.ref
 *     preference_reference_close(&r);
 */
#ifndef LLMC_TRAIN_PREFERENCE_REFERENCE_H
#define LLMC_TRAIN_PREFERENCE_REFERENCE_H

#include "../base/clock.h"              /* clock_seconds */
#include "../base/error.h"              /* die, usage_error, xmalloc, Error */
#include "../base/options.h"            /* OPTION_FLAG, OPTION_TEXT, OPTION_GROUP, Option */
#include "../model/batch.h"             /* Batch */
#include "../model/micro_plan.h"        /* MicroPlan */
#include "../model/model.h"             /* Model, model_sync */
#include "../model/model_load.h"        /* model_weights_hash */
#include "../model/transformer.h"       /* ModelOutput, model_forward */
#include "../model/workspace.h"         /* Workspace */
#include "../records/completion_set.h"  /* CompletionSet, CompletionSlice, completion_set_add, ... */
#include "../records/preference_data.h" /* PreferenceData, preference_data_positions */
#include "../records/ref_logps.h"       /* RefLogps, ref_logps_add, ref_logps_find, ref_logps_free, ... */
#include "reference.h"                  /* Reference, reference_close, reference_open, REFERENCE_SYNC_OPTIONS, ... */
#include "trainer.h"                    /* Trainer, trainer_agree, trainer_count_flops, trainer_keep_hash */

typedef struct PreferenceReferenceOptions {
    const char *reference, *ref_logps;
    bool none, precompute;
    ReferenceSync sync;
} PreferenceReferenceOptions;

static inline PreferenceReferenceOptions preference_reference_options(void) {
    return (PreferenceReferenceOptions){.sync = reference_sync_options()};
}

// clang-format off
#define PREFERENCE_REFERENCE_OPTIONS(o)                                                                                \
    OPTION_GROUP("Reference"),                                                                                         \
    OPTION_TEXT("reference",                0, &(o).reference,      "FILE",                                            \
                "reference model; the model of -c if not given"),                                                      \
    OPTION_FLAG("reference-free",           0, &(o).none, "use no reference: its log-probabilities count as 0"),       \
    OPTION_FLAG("precompute-ref-log-probs", 0, &(o).precompute,                                                        \
                "compute the reference's log-probabilities once, then free it"),                                       \
    OPTION_TEXT("ref-log-probs",            0, &(o).ref_logps,      "FILE",                                            \
                "precompute them into this file, or read them from it if it exists"),                                  \
    REFERENCE_SYNC_OPTIONS((o).sync)
// clang-format on

/* Rejects options that contradict each other. needs: the loss uses a reference; unpaired: it is kto or its variant;
 * adapters: only adapters are trained; table: all options. */
static inline void preference_reference_check(PreferenceReferenceOptions *o, bool needs, bool unpaired, bool adapters,
                                              const Option *table) {
    if (o->ref_logps) o->precompute = true;
    if (o->none && unpaired) usage_error("--reference-free: kto needs a reference");
    if ((o->none || !needs) && (o->precompute || o->reference || o->sync.on))
        usage_error("%s: no reference is used%s",
                    o->reference ? "--reference"
                    : o->sync.on ? "--sync-ref-model"
                                 : "--precompute-ref-log-probs",
                    o->none ? " with --reference-free" : " by --loss-type");
    if (o->none && !needs) usage_error("--reference-free: no reference is used by --loss-type");
    reference_sync_check(&o->sync, adapters, table);
    if (o->sync.on && o->precompute) usage_error("--sync-ref-model: cannot be used with --precompute-ref-log-probs");
    if (o->ref_logps && !strcmp(o->ref_logps, "-")) usage_error("--ref-log-probs: must be a file");
}

typedef enum { REFERENCE_NONE, REFERENCE_TABLE, REFERENCE_LIVE } ReferenceKind;

typedef struct PreferenceReference {
    const PreferenceReferenceOptions *o; /* the command line */
    ReferenceKind kind;
    Reference live; /* if kind is REFERENCE_LIVE */
} PreferenceReference;

/* ---- log-probabilities computed beforehand --------------------------------------------------------------------- */

/* Computes log ref of all tokens of the set with a model. */
static inline void preference_reference_forward(Trainer *t, const Model *m, const Workspace *w, Batch *b,
                                                CompletionSet *s) {
    const MicroPlan *plan = completion_set_plan(s, b);
    for (int32_t i = 0; i < plan->micros; i++) {
        const CompletionSlice x = completion_set_pack(s, b, plan->first[i], plan->first[i + 1]);
        model_forward(m, w, b, 1.0f, &(ModelOutput){.logp = x.ref});
        trainer_count_flops(t, m, b, 1);
    }
}

/* Copies log ref of the set's completions from the table of d. mismatch: a set of mismatched completions. */
static inline void preference_reference_take(const PreferenceData *d, CompletionSet *s, bool mismatch) {
    for (int32_t i = 0; i < s->count; i++) {
        const int64_t k = s->record[i] + (mismatch ? d->count : 0);
        memcpy(s->ref + s->offset[4 * i + 1], d->ref + d->at[k], (size_t)(d->at[k + 1] - d->at[k]) * sizeof *s->ref);
    }
}

/* Computes log ref of all completions of d. */
static inline void preference_reference_compute(Trainer *t, const Model *m, const Workspace *w, Batch *b, bool shared,
                                                PreferenceData *d) {
    enum { CHUNK = 256 };
    CompletionSet s = {.shared = shared};
    d->ref = (float *)xmalloc((size_t)d->at[d->items] * sizeof *d->ref);
    for (int64_t i = 0; i < d->items;) {
        const int64_t first = i;
        completion_set_clear(&s);
        for (; i < d->items && s.count < CHUNK; i++) {
            Pair pair = i < d->count ? d->pair[i] : d->mismatch[i - d->count];
            pair.gold_len = 0; /* no loss compares it with the reference */
            completion_set_add(&s, &pair, i);
        }
        preference_reference_forward(t, m, w, b, &s);
        memcpy(d->ref + d->at[first], s.ref, (size_t)(d->at[i] - d->at[first]) * sizeof *d->ref);
    }
    completion_set_free(&s);
}

/* Takes log ref of d from a file. Ends the program if the file was computed for other data. */
static inline void preference_reference_find(const RefLogps *l, const char *file, PreferenceData *d) {
    const int64_t tokens = d->at[d->items];
    const float *logp = ref_logps_find(l, d->fingerprint, (uint64_t)tokens);
    if (!logp)
        die("%s: it was computed for other records than those of %s, or with a different --max-length%s; remove it to "
            "recompute it",
            file, d->shard->name, d->unpaired ? " or --seed" : "");
    d->ref = (float *)xmalloc((size_t)tokens * sizeof *d->ref);
    memcpy(d->ref, logp, (size_t)tokens * sizeof *d->ref);
}

/* Ends the program unless the reference, whose weights have this hash, is the one that the run began with and that the
 * file was computed with. */
static inline void preference_reference_same(Trainer *t, const RefLogps *l, const char *file, uint64_t model) {
    if (!trainer_keep_hash(t->state, "ref_logps", model ? model : l->model))
        die("%s: the reference is not the one that the run began with", file ? file : "--reference");
    if (file && model && l->model != model)
        die("%s: it was computed with a different model than the reference; remove it to recompute it", file);
}

/* Positions of the longest prompt with one of its completions in `count` shards. */
static inline int32_t preference_reference_longest(PreferenceData *const data[], int count) {
    int32_t most = 0;
    for (int i = 0; i < count; i++) {
        const int32_t n = preference_data_positions(data[i]);
        if (n > most) most = n;
    }
    return most;
}

/* Fills in the tables of log ref of `count` shards. work, b: the policy's, used if it is the reference itself; longest:
 * positions of the longest prompt with its completion; reference: another model, or NULL; file: read if it exists, else
 * written; or NULL. Errors end the program (see
 * trainer.h). */
static inline void preference_reference_precompute(Trainer *t, const Workspace *work, Batch *b, bool shared,
                                                   int32_t longest, const char *reference, const char *file,
                                                   PreferenceData *data[], int count) {
    Error e;
    RefLogps l = {0};
    Reference r = {0};
    const bool there = file && !access(file, F_OK),
               own = reference_shared(t, reference) || (!reference && !t->o->resume && !t->o->adapter);
    const double start = clock_seconds();
    const Model base = reference_base(t);
    uint64_t model = own ? model_weights_hash(&base) : 0;
    if (there && !ref_logps_read(&l, file, &e)) die("%s", e.text);
    if (file) trainer_agree(t, ref_logps_hash(&l), file);
    if (!own && (reference || !there)) {
        reference_open(&r, t, reference, b->rows_max, longest, "--precompute-ref-log-probs");
        model = model_weights_hash(&r.model);
    }
    preference_reference_same(t, &l, there ? file : NULL, model);
    for (int i = 0; i < count; i++) {
        if (there) preference_reference_find(&l, file, data[i]);
        else if (own) preference_reference_compute(t, &base, work, b, shared, data[i]);
        else preference_reference_compute(t, &r.model, &r.work, b, shared, data[i]);
    }
    if (r.t) reference_close(&r);
    ref_logps_free(&l);
    if (!there && !model_sync(&t->model, &e)) die("%s", e.text);
    if (there || t->dist.rank) return;
    fprintf(stderr, "reference log-probabilities computed in %.1f s\n", clock_seconds() - start);
    if (!file) return;
    l.model = model;
    for (int i = 0; i < count; i++) {
        const PreferenceData *d = data[i];
        ref_logps_add(&l, d->fingerprint, (uint64_t)d->at[d->items], d->ref);
    }
    if (!ref_logps_write(&l, file, &e)) die("%s", e.text);
}

/* ---- both kinds ------------------------------------------------------------------------------------------------ */

/* Opens the reference of a loss that needs one. work, b: the policy's; shared: both completions of a pair share one
 * copy of their prompt; longest: positions of the longest prompt with its completion; data: (count) the shards that a
 * table is made for. */
static inline void preference_reference_open(PreferenceReference *r, Trainer *t, const Workspace *work, Batch *b,
                                             bool shared, int32_t longest, PreferenceData *data[], int count) {
    const PreferenceReferenceOptions *o = r->o;
    r->kind = o->precompute ? REFERENCE_TABLE : REFERENCE_LIVE;
    if (o->precompute)
        preference_reference_precompute(t, work, b, shared, longest, o->reference, o->ref_logps, data, count);
    else if (o->sync.on) reference_open_following(&r->live, t, o->reference, b->rows_max, longest, "--sync-ref-model");
    else reference_open(&r->live, t, o->reference, b->rows_max, longest, "--loss-type");
}

/* Fills in log ref of the set. b: the batch to use; d: the set's shard, for a table; mismatch: the set holds mismatched
 * completions. */
static inline void preference_reference_run(PreferenceReference *r, Batch *b, const PreferenceData *d, CompletionSet *s,
                                            bool mismatch) {
    if (r->kind == REFERENCE_LIVE) preference_reference_forward(r->live.t, &r->live.model, &r->live.work, b, s);
    if (r->kind == REFERENCE_TABLE) preference_reference_take(d, s, mismatch);
}

/* --sync-ref-model: moves the reference towards the policy if an update is due. Call it after each optimizer step. */
static inline void preference_reference_sync(PreferenceReference *r) { reference_sync(&r->live, &r->o->sync); }

static inline void preference_reference_close(PreferenceReference *r) {
    if (r->kind == REFERENCE_LIVE) reference_close(&r->live);
}

#endif
