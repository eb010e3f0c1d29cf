/* critic.h - separate value function for PPO: a second model with a value head, an optimizer and a file of its own.
 *
 * The critic starts from any checkpoint with the policy's vocabulary: the SFT model with a zero value head, or a reward
 * model, whose head is scaled so that the critic's initial values are the normalised scores ("The N+ Implementation
 * Details of RLHF with PPO", 2403.17031, detail 7: the value network is initialised from the reward model).
 *
 * If the policy trains adapters, so does the critic, with its value head.
 *
 * It is written next to every training state, from which a resumed run continues (companion.h). Errors end the program
 * (see trainer.h).
 *
 *     Critic c;
 *     critic_open(&c, &trainer, "rm.bin", longest, rows, rate);
 *     model_forward(&c.model, &c.work, &batch, 1.0f, &(ModelOutput){.value = value});
 *     model_backward(&c.model, &c.work, &batch, 1.0f, NULL, NULL, dvalue);
 *     critic_step(&c, loss, step);
 *     critic_close(&c);
 */
#ifndef LLMC_TRAIN_CRITIC_H
#define LLMC_TRAIN_CRITIC_H

#include "../base/error.h"          /* die, Error, xmalloc */
#include "../dist/grads.h"          /* DistGrads, dist_grads_close, dist_grads_discard, dist_grads_open, ... */
#include "../model/model.h"         /* Model, model_download, model_free, model_set_longest, ... */
#include "../model/model_file.h"    /* MODEL_FLOAT32, model_load_as, model_save */
#include "../model/model_fits.h"    /* FitSide, fit_model */
#include "../model/model_load.h"    /* ModelFile, ModelLoad, Quantize, model_file_free */
#include "../model/optimizer.h"     /* OptimizerResult, Optimizer, optimizer_configure, optimizer_free, ... */
#include "../model/schedule.h"      /* schedule_at */
#include "../model/tensors.h"       /* TENSOR_valuew */
#include "../model/workspace.h"     /* Workspace, workspace_free, workspace_new */
#include "../reward/reward_model.h" /* RewardModelNote, reward_model_note_read */
#include "companion.h"              /* companion_resume */
#include "trainer.h"                /* Trainer, state_int, trainer_add_stage, trainer_agree, ... */

typedef struct Critic {
    Trainer *t;
    Model model;
    ModelFile file;
    Optimizer optimizer;
    DistGrads grads;
    Workspace work;
    double learning_rate; /* peak */
    OptimizerResult update;
} Critic;

/* Multiplies the value head by `scale` and sets its bias to (bias + shift) scale. */
static inline void value_head_scale(Model *m, double scale, double shift) {
    const size_t C = (size_t)m->config.width;
    float *host = (float *)xmalloc((C + 1) * sizeof *host);
    const size_t head = m->tensor[TENSOR_valuew].offset;
    model_download(m, head, host, C + 1);
    host[C] = (float)(host[C] + shift);
    for (size_t i = 0; i <= C; i++) host[i] = (float)(host[i] * scale);
    model_upload(m, head, host, C + 1);
    free(host);
}

/* Initialises the value head: a new head is 0 (Ziegler et al. 2019); a reward model's head gives its normalised
 * scores. */
static inline void value_head_start(Model *m, const ModelFile *f, const char *path) {
    Error e;
    RewardModelNote note;
    if (!f->head) value_head_scale(m, 0, 0);
    else if (!reward_model_note_read(&note, f->reward, path, &e)) die("%s", e.text);
    else value_head_scale(m, 1 / note.deviation, -note.mean);
}

/* The trainer's companion.save(). */
static inline bool critic_save(void *critic, const char *path, Error *e) {
    const Critic *c = (const Critic *)critic;
    char counters[128];
    snprintf(counters, sizeof counters, "{\"stage\":\"critic\",\"step\":%lld,\"optimizer_step\":%lld}",
             (long long)c->t->step, (long long)c->optimizer.step);
    return model_save(&c->model, &c->file, path, MODEL_FLOAT32, &c->optimizer, counters, e);
}

/* Takes the optimizer's counter from a resumed critic. Ends the program if it is not the critic of the resumed
 * state. */
static inline void critic_counters(Critic *c, const char *path) {
    json_t *s = c->file.trainer ? json_loads(c->file.trainer, 0, NULL) : NULL;
    const char *stage = json_string_value(json_object_get(s, "stage"));
    if (!stage || strcmp(stage, "critic") || state_int(s, "step") != c->t->step)
        die("%s: it is not the critic of the state at step %lld", path, (long long)c->t->step);
    c->optimizer.step = state_int(s, "optimizer_step");
    json_decref(s);
}

/* Opens the critic. Call it after trainer_open(). path: the model to start from; a resumed run uses the critic file of
 * its state instead, and path only as the base of adapters. longest: maximum tokens of prompt and completion; rows: of
 * the largest micro-batch; rate: peak learning rate, 0 for the policy's. */
static inline void critic_open(Critic *c, Trainer *t, const char *path, int longest, int rows, double rate) {
    Error e;
    *c = (Critic){.t = t, .learning_rate = rate > 0 ? rate : t->o->learning_rate};
    const char *resumed = companion_resume(&t->companion, "critic", t->o->resume, t->step);
    const ModelLoad how = {.value_head = true,
                           .gradients = true,
                           .lora = t->model.config.lora,
                           .quantize = (Quantize)t->o->quantize,
                           .resume = resumed,
                           .seed = (uint64_t)t->o->seed};
    if (!model_load_as(&c->model, &c->file, path, &how, t->backend, t->device, &c->optimizer, &e)) die("%s", e.text);
    if (resumed) path = resumed;
    trainer_agree(t, c->file.hash, path);
    const FitSide side = fit_model(path, &c->model.config, &c->file), policy = trainer_side(t);
    trainer_fits(t, &side, &policy, longest);
    model_set_longest(&c->model, longest);
    if (resumed) critic_counters(c, path);
    else {
        value_head_start(&c->model, &c->file, path);
        optimizer_reset(&c->optimizer, &c->model);
    }
    free(c->file.reward);
    c->file.reward = NULL;                                     /* the head computes values, not scores */
    if (!resumed) trainer_add_stage(&c->file, "critic", NULL); /* by which it is recognised as a critic */
    optimizer_configure(&c->optimizer, t->o->beta1, t->o->beta2, t->o->eps, t->o->weight_decay, t->o->max_grad_norm);
    if (!workspace_new(&c->work, &c->model, rows, rows, rows, true, (int)t->o->recompute, &e)) die("%s", e.text);
    dist_grads_open(&c->grads, &t->dist, &c->model, &c->optimizer, true);
    t->companion.save = critic_save;
    t->companion.context = c;
}

/* One optimizer step, with the schedule's rate at `step`. Call it after trainer_update(). loss: the sum over all ranks;
 * if it is not finite, the step is skipped. Collective. */
static inline void critic_step(Critic *c, double loss, int64_t step) {
    Error e;
    const double rate = c->learning_rate * schedule_at(&c->t->schedule, step);
    if (!model_sync(&c->model, &e)) die("%s", e.text);
    if (isfinite(loss)) {
        c->update = dist_grads_update(&c->grads, rate);
    } else {
        dist_grads_discard(&c->grads);
        c->update = (OptimizerResult){.grad_norm = NAN, .skipped = true};
    }
}

static inline void critic_close(Critic *c) {
    if (!c->t) return;
    dist_grads_close(&c->grads);
    workspace_free(&c->work, &c->model);
    optimizer_free(&c->optimizer, &c->model);
    model_free(&c->model);
    model_file_free(&c->file);
    *c = (Critic){0};
}

#endif
