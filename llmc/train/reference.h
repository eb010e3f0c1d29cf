/* reference.h - the reference model of KL terms and preference losses.
 *
 * The reference is the model that the run began with, or another model with the same tokens (--reference FILE), which
 * must have a position for every token of the run (model/model_fits.h). It is frozen: a resumed run must name the file
 * again; the state contains the model's hash, and any other model is rejected.
 *
 * If new adapters are trained, the reference is the base model, which is the policy without its adapters: one set of
 * weights serves both, and a resumed run need not name it. If a run continues from --adapter, the reference is the base
 * with these adapters, and has weights of its own.
 *
 * TR-DPO (Gorbatovski et al. 2024, 2404.09656) moves it towards the policy every few steps, and ProRL (Liu et al. 2025,
 * 2505.24864) makes the policy the reference and restarts the optimizer, so that a long run is not held at its
 * beginning. Such a reference is written next to every training state (companion.h), from which a resumed run goes on.
 *
 *     Reference r;
 *     if (beta > 0) reference_open(&r, &trainer, path, rows, longest, "--beta is not 0");
 *     model_forward(&r.model, &r.work, &batch, temperature, &out);     // model/transformer.h
 *     reference_close(&r);
 */
#ifndef LLMC_TRAIN_REFERENCE_H
#define LLMC_TRAIN_REFERENCE_H

#include "../base/error.h"       /* die, Error, usage_error, xmalloc */
#include "../base/options.h"     /* OPTION_FLAG, OPTION_INT, OPTION_REAL, Option, ... */
#include "../model/config.h"     /* ModelConfig */
#include "../model/model.h"      /* Model, model_download, MODEL_CHUNK, ModelChunk, ... */
#include "../model/model_file.h" /* MODEL_FLOAT32, model_load_as, model_save */
#include "../model/model_fits.h" /* FitSide, fit_model, model_fits_policy */
#include "../model/model_load.h" /* ModelFile, ModelLoad, QUANTIZE_NONE, Quantize, ... */
#include "../model/optimizer.h"  /* optimizer_reset */
#include "../model/tensors.h"    /* GPT2_FILE_TENSORS */
#include "../model/workspace.h"  /* workspace_new, Workspace, workspace_bytes, workspace_free */
#include "companion.h"           /* companion_resume */
#include "trainer.h"             /* Trainer, trainer_agree, trainer_fits, trainer_keep_hash, ... */

/* How a reference follows the policy. */
typedef struct ReferenceSync {
    bool on; /* every `steps` steps: ref = alpha pi + (1 - alpha) ref */
    double alpha;
    int64_t steps, reset; /* reset: every so many steps ref = pi, with a new optimizer state; 0: never */
} ReferenceSync;

/* TRL's defaults. */
static inline ReferenceSync reference_sync_options(void) { return (ReferenceSync){.alpha = 0.6, .steps = 512}; }

// clang-format off
#define REFERENCE_SYNC_OPTIONS(o)                                                                                      \
    OPTION_FLAG("sync-ref-model",           0, &(o).on,                                                                \
                "TR-DPO: move the reference towards the policy during training"),                                      \
    OPTION_REAL("ref-model-mixup-alpha",    0, &(o).alpha,          0, 1,                                              \
                "reference = alpha policy + (1 - alpha) reference"),                                                   \
    OPTION_INT ("ref-model-sync-steps",     0, &(o).steps,          1, 1e9, "update the reference every N steps")
// clang-format on

/* Rejects options that contradict each other or have no effect. adapters: only adapters are trained; table: all
 * options. */
static inline void reference_sync_check(const ReferenceSync *o, bool adapters, const Option *table) {
    const OptionUse use[] = {
        {&o->alpha, o->on, "used only with --sync-ref-model"},
        {&o->steps, o->on, "used only with --sync-ref-model"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    if ((o->on || o->reset) && adapters)
        usage_error("%s: cannot be combined with --lora-rank; the reference is the base, which is not trained",
                    o->on ? "--sync-ref-model" : "--ref-reset-steps");
}

typedef struct Reference {
    Trainer *t;
    bool shared; /* the model has the policy's weights */
    Model model;
    ModelFile file;
    Workspace work;
} Reference;

/* Whether the reference is the policy without its adapters. path: of --reference, or NULL. */
static inline bool reference_shared(const Trainer *t, const char *path) {
    return !path && t->model.config.lora.rank && !t->o->adapter;
}

/* Memory of a reference in bytes, for trainer_announce(). rows: of the largest micro-batch. */
static inline size_t reference_bytes(const Trainer *t, const char *path, int rows) {
    const ModelConfig *c = &t->model.config;
    const bool lean = !path && t->model.matrix; /* shares the quantised matrices */
    const size_t bytes = lean ? t->model.stored * t->backend->weight_size : model_bytes(c, t->backend, false);
    const size_t weights = reference_shared(t, path) ? 0 : bytes * 2;
    return weights + workspace_bytes(c, t->backend, rows, rows, rows, false, 0);
}

/* The policy without its adapters. */
static inline Model reference_base(const Trainer *t) {
    Model base = t->model;
    base.adapter_off = true;
    return base;
}

/* Ends the program unless the reference, whose hash this is, is the one that the run began with. */
static inline void reference_same(Trainer *t, uint64_t hash, const char *path) {
    trainer_agree(t, hash, path ? path : "the reference");
    if (!trainer_keep_hash(t->state, "reference", hash))
        die("%s: it is not the reference that the run began with", path);
}

/* Checks that the reference can be run on the policy's tokens. The model of -c takes the tokens that the policy took in
 * the run's beginning. */
static inline void reference_fits(Reference *r, const char *path, bool own, int32_t longest) {
    const Trainer *t = r->t;
    ModelConfig *c = &r->model.config;
    const FitSide policy = trainer_side(t);
    if (own && c->vocab < policy.vocab && policy.vocab <= c->padded_vocab) {
        free(r->file.tokenizer);
        r->file.tokenizer = NULL;
        model_grow_vocab(&r->model, policy.vocab, (uint64_t)t->o->seed);
    }
    const FitSide side = fit_model(path, c, &r->file);
    trainer_fits(t, &side, &policy, longest);
}

/* Opens the reference. Call it after trainer_open() and before the first step. path: a model, or NULL for the model of
 * -c; longest: positions of the longest sequence; why: the option that needs a reference, for the error message. Errors
 * end the program (see trainer.h). */
static inline void reference_open(Reference *r, Trainer *t, const char *path, int rows, int32_t longest,
                                  const char *why) {
    Error e;
    *r = (Reference){.t = t, .shared = reference_shared(t, path)};
    if (r->shared) {
        r->model = reference_base(t);
        reference_same(t, model_weights_hash(&r->model), t->o->resume);
        if (!workspace_new(&r->work, &r->model, rows, rows, rows, false, 0, &e)) die("%s", e.text);
        return;
    }
    const bool own = !path;
    const char *adapter = path ? NULL : t->o->adapter;
    const bool load = path || adapter || t->o->resume;
    if (!path) path = t->o->checkpoint;
    if (load && (!path || !strcmp(path, "-"))) usage_error("--reference: give the reference model's file (%s)", why);
    if (load) {
        const ModelLoad how = {.adapter = adapter,
                               .quantize = adapter ? (Quantize)t->o->quantize : QUANTIZE_NONE,
                               .seed = (uint64_t)t->o->seed};
        if (!model_load_as(&r->model, &r->file, path, &how, t->backend, t->device, NULL, &e)) die("%s", e.text);
        if (!model_fits_policy(&r->file, path, &e)) die("%s", e.text);
        reference_fits(r, path, own, longest);
        if (how.quantize) model_borrow_blocks(&r->model, &t->model);
    } else if (!model_copy(&r->model, &t->model, &e)) die("%s", e.text);
    model_set_longest(&r->model, longest);
    reference_same(t, adapter ? model_hash(&r->model, r->model.parameters) : load ? r->file.hash : t->file.hash, path);
    if (!workspace_new(&r->work, &r->model, rows, rows, rows, false, 0, &e)) die("%s", e.text);
}

static inline void reference_close(Reference *r) {
    workspace_free(&r->work, &r->model);
    if (!r->shared) model_free(&r->model);
    model_file_free(&r->file);
}

/* ---- a reference that follows the policy ----------------------------------------------------------------------- */

/* The trainer's companion.save(). */
static inline bool reference_save(void *reference, const char *path, Error *e) {
    const Reference *r = (const Reference *)reference;
    return model_save(&r->model, &r->t->file, path, MODEL_FLOAT32, NULL, NULL, e);
}

/* Opens a reference that reference_follow() will move; its arguments are those of reference_open(). */
static inline void reference_open_following(Reference *r, Trainer *t, const char *path, int rows, int32_t longest,
                                            const char *why) {
    const char *resumed = companion_resume(&t->companion, "reference", t->o->resume, t->step);
    reference_open(r, t, resumed ? resumed : path, rows, longest, why);
    if (r->model.parameters != t->model.parameters) die("%s: the reference must have the shape of the model", why);
    json_object_del(t->state, "reference"); /* a resumed run finds it by the name of its file */
    t->companion.save = reference_save;
    t->companion.context = r;
}

/* Moves the weights of a model of the policy's shape towards the policy: model = alpha pi + (1 - alpha) model. */
static inline void reference_mix(const Model *model, const Model *policy, double alpha) {
    const float a = (float)alpha;
    float *pi = (float *)xmalloc(MODEL_CHUNK * sizeof *pi);
    for (ModelChunk c = {0}; model_each_chunk(&c, policy->tensor[GPT2_FILE_TENSORS].offset);) {
        model_download(model, c.at, c.host, c.n);
        model_download(policy, c.at, pi, c.n);
        for (size_t i = 0; i < c.n; i++) c.host[i] = c.host[i] * (1 - a) + a * pi[i];
        model_upload(model, c.at, c.host, c.n);
    }
    free(pi);
}

/* TR-DPO's soft update. */
static inline void reference_follow(Reference *r, double alpha) { reference_mix(&r->model, &r->t->model, alpha); }

/* Moves the reference if an update is due. Call it after each optimizer step. */
static inline void reference_sync(Reference *r, const ReferenceSync *o) {
    if (!o->on && !o->reset) return; /* there may be no model */
    const int64_t step = r->t->step;
    if (o->on && step % o->steps == 0) reference_follow(r, o->alpha);
    if (!o->reset || step % o->reset) return;
    reference_follow(r, 1);
    optimizer_reset(&r->t->optimizer, &r->t->model);
}

#endif
