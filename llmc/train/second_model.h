/* second_model.h - a second model that a trainer trains next to the policy: PPO's critic (critic.h) or the
 * process reward model of PRIME (prime.h). It has an optimizer, a learning rate and a file of its own.
 *
 * If the policy trains adapters, so does the second model, on a base of its own.
 *
 * It is written next to every training state, from which a resumed run continues (companion.h). Errors end the program
 * (see trainer.h).
 *
 *     SecondModel m;
 *     const SecondModelOpen how = {.kind = "critic", .path = "rm.bin", .value_head = true, .longest = longest,
 *                                  .rows = rows, .learning_rate = 1e-5};
 *     if (second_model_open(&m, &trainer, &how)) ...             // a new run: sets what the file does not give
 *     second_model_check_output(&m, "critic.bin");
 *     model_forward(&m.model, &m.work, &batch, 1.0f, &(ModelOutput){.value = value});
 *     model_backward(&m.model, &m.work, &batch, 1.0f, NULL, NULL, dvalue);
 *     second_model_step(&m, loss, step);
 *     second_model_write(&m, "critic.bin");
 *     second_model_close(&m);
 */
#ifndef LLMC_TRAIN_SECOND_MODEL_H
#define LLMC_TRAIN_SECOND_MODEL_H

#include "../base/error.h"       /* Error, die, xmalloc, xstrdup */
#include "../dist/grads.h"       /* DistGrads, dist_grads_close, dist_grads_discard, dist_grads_open, ... */
#include "../model/config.h"     /* LoraConfig, ModelConfig */
#include "../model/model.h"      /* Model, model_free, model_held_bytes, model_set_longest, ... */
#include "../model/model_file.h" /* ModelDtype, model_save, MODEL_FLOAT32, model_check_output, ... */
#include "../model/model_fits.h" /* FitSide, fit_model */
#include "../model/model_load.h" /* ModelFile, ModelLoad, Quantize, model_file_free */
#include "../model/optimizer.h"  /* OptimizerResult, Optimizer, optimizer_bytes, optimizer_configure, ... */
#include "../model/schedule.h"   /* schedule_at */
#include "../model/workspace.h"  /* Workspace, workspace_bytes, workspace_free, workspace_new */
#include "../report/metrics.h"   /* metrics_warn */
#include "companion.h"           /* companion_resume */
#include "trainer.h"             /* Trainer, state_int, trainer_add_stage, trainer_agree, ... */

typedef struct SecondModel {
    Trainer *t;       /* NULL: not open */
    const char *kind; /* of its file next to a state, and of its stage in the lineage */
    Model model;
    ModelFile file;
    Optimizer optimizer;
    DistGrads grads;
    Workspace work;
    double learning_rate;   /* peak */
    OptimizerResult update; /* of the last step */
} SecondModel;

typedef struct SecondModelOpen {
    const char *kind;
    const char *path; /* the model to start from; a resumed run needs it only as the base of adapters */
    bool own;        /* path is the model of -c: the adapters of --adapter and new tokens of the data are added to it */
    bool value_head; /* it has a value head */
    int longest;     /* maximum tokens of prompt and completion */
    int rows;        /* of the largest micro-batch */
    double learning_rate; /* peak; 0 for the policy's */
} SecondModelOpen;

/* The trainer's companion.save(). */
static inline bool second_model_save(void *second, const char *path, Error *e) {
    const SecondModel *m = (const SecondModel *)second;
    char counters[160];
    snprintf(counters, sizeof counters, "{\"stage\":\"%s\",\"step\":%lld,\"optimizer_step\":%lld}", m->kind,
             (long long)m->t->step, (long long)m->optimizer.step);
    return model_save(&m->model, &m->file, path, MODEL_FLOAT32, &m->optimizer, counters, e);
}

/* Takes the optimizer's counter from a resumed model. Ends the program if it is not the one of the resumed state. */
static inline void second_model_counters(SecondModel *m, const char *path) {
    json_t *s = m->file.trainer ? json_loads(m->file.trainer, 0, NULL) : NULL;
    const char *stage = json_string_value(json_object_get(s, "stage"));
    if (!stage || strcmp(stage, m->kind) || state_int(s, "step") != m->t->step)
        die("%s: it is not the %s of the state at step %lld", path, m->kind, (long long)m->t->step);
    m->optimizer.step = state_int(s, "optimizer_step");
    json_decref(s);
}

/* Gives a model that was read from -c the tokens and the texts that the policy has from the data. */
static inline void second_model_take_tokens(SecondModel *m) {
    const Trainer *t = m->t;
    ModelFile *f = &m->file;
    const int32_t vocab = t->model.config.vocab;
    if (m->model.config.vocab < vocab && vocab <= m->model.config.padded_vocab)
        trainer_grow_vocab(&m->model, &m->optimizer, f, vocab, (uint64_t)t->o->seed);
    if (!f->tokenizer && t->file.tokenizer) {
        f->tokenizer_bytes = t->file.tokenizer_bytes;
        f->tokenizer = xmalloc(f->tokenizer_bytes);
        memcpy(f->tokenizer, t->file.tokenizer, f->tokenizer_bytes);
    }
    if (!f->chat_template && t->file.chat_template) f->chat_template = xstrdup(t->file.chat_template);
}

/* Opens the model. Call it after trainer_open(). A resumed run takes the weights from the file of its state instead of
 * how->path. Returns true if they are those of how->path, so that the caller sets what that file does not give. */
static inline bool second_model_open(SecondModel *m, Trainer *t, const SecondModelOpen *how) {
    Error e;
    *m = (SecondModel){
        .t = t,
        .kind = how->kind,
        .learning_rate = how->learning_rate > 0 ? how->learning_rate : t->o->learning_rate,
    };
    const char *adapter = how->own ? t->o->adapter : NULL;
    const char *resumed = companion_resume(&t->companion, how->kind, t->o->resume, t->step);
    const ModelLoad load = {.value_head = how->value_head,
                            .gradients = true,
                            .lora = adapter ? (LoraConfig){0} : t->model.config.lora,
                            .adapter = adapter,
                            .quantize = (Quantize)t->o->quantize,
                            .resume = resumed,
                            .seed = (uint64_t)t->o->seed};
    if (!model_load_as(&m->model, &m->file, how->path, &load, t->backend, t->device, &m->optimizer, &e))
        die("%s", e.text);
    const char *path = resumed ? resumed : how->path;
    if (how->own) second_model_take_tokens(m);
    trainer_agree(t, m->file.hash, path);
    const FitSide side = fit_model(path, &m->model.config, &m->file), policy = trainer_side(t);
    trainer_fits(t, &side, &policy, how->longest);
    model_set_longest(&m->model, how->longest);
    if (resumed) second_model_counters(m, path);
    else {
        optimizer_reset(&m->optimizer, &m->model);
        trainer_add_stage(&m->file, how->kind, NULL);
    }
    optimizer_configure(&m->optimizer, t->o->beta1, t->o->beta2, t->o->eps, t->o->weight_decay, t->o->max_grad_norm);
    if (!workspace_new(&m->work, &m->model, how->rows, how->rows, how->rows, true, (int)t->o->recompute, &e))
        die("%s", e.text);
    dist_grads_open(&m->grads, &t->dist, &m->model, &m->optimizer, true);
    t->companion.save = second_model_save;
    t->companion.context = m;
    return !resumed;
}

/* Memory of the model in bytes, apart from what the process uses already, for trainer_announce(); 0 if it is not open. rows:
 * of the largest micro-batch. */
static inline size_t second_model_bytes(const SecondModel *m, int rows) {
    const Trainer *t = m->t;
    if (!t) return 0;
    const ModelConfig *c = &m->model.config;
    const size_t held =
        model_held_bytes(&m->model) + m->model.grads_count * sizeof(float) + optimizer_bytes(c, t->backend);
    return (t->backend->memory_peak ? held : 0) +
           workspace_bytes(c, t->backend, rows, rows, rows, true, (int)t->o->recompute);
}

/* One optimizer step, with the schedule's rate at `step`. Call it outside of the policy's steps, which trainer_update()
 * ends. loss: the sum over all ranks; if it is not finite, the step is skipped. Collective. */
static inline void second_model_step(SecondModel *m, double loss, int64_t step) {
    Error e;
    const double rate = m->learning_rate * schedule_at(&m->t->schedule, step);
    if (!model_sync(&m->model, &e)) die("%s", e.text);
    if (isfinite(loss)) {
        m->update = dist_grads_update(&m->grads, rate);
    } else {
        dist_grads_discard(&m->grads);
        m->update = (OptimizerResult){.grad_norm = NAN, .skipped = true};
    }
    if (m->update.skipped)
        metrics_warn(&m->t->metrics,
                     "step %lld: the loss or the gradient of the %s is not finite; its step was skipped",
                     (long long)step + 1, m->kind);
}

/* Ends the program if the model cannot be written to this path; NULL: it will not be. */
static inline void second_model_check_output(const SecondModel *m, const char *path) {
    Error e;
    if (path && !model_check_output(&m->model.config, &m->file, path, (ModelDtype)m->t->o->output_dtype, &e))
        die("%s", e.text);
}

/* Writes the model; a failure ends the run at trainer_write(). path: NULL writes nothing. */
static inline void second_model_write(SecondModel *m, const char *path) {
    Error e;
    if (path && !m->t->dist.rank &&
        !model_save(&m->model, &m->file, path, (ModelDtype)m->t->o->output_dtype, NULL, NULL, &e))
        trainer_later(m->t, &e);
}

static inline void second_model_close(SecondModel *m) {
    if (!m->t) return;
    dist_grads_close(&m->grads);
    workspace_free(&m->work, &m->model);
    optimizer_free(&m->optimizer, &m->model);
    model_free(&m->model);
    model_file_free(&m->file);
    *m = (SecondModel){0};
}

#endif
