/* critic.h - separate value function for PPO: a second model (second_model.h) with a value head.
 *
 * The critic starts from any checkpoint with the policy's vocabulary: the SFT model with a zero value head, or a reward
 * model, whose head is scaled so that the critic's initial values are the normalised scores ("The N+ Implementation
 * Details of RLHF with PPO", 2403.17031, detail 7: the value network is initialised from the reward model).
 *
 *     SecondModel c;
 *     critic_open(&c, &trainer, (SecondModelOpen){.path = "rm.bin", .longest = longest, .rows = rows});
 *     model_forward(&c.model, &c.work, &batch, 1.0f, &(ModelOutput){.value = value});
 *     model_backward(&c.model, &c.work, &batch, 1.0f, NULL, NULL, dvalue);
 *     second_model_step(&c, loss, step);
 *     second_model_close(&c);
 */
#ifndef LLMC_TRAIN_CRITIC_H
#define LLMC_TRAIN_CRITIC_H

#include "../base/error.h"          /* Error, die, xmalloc */
#include "../model/model.h"         /* Model, model_download, model_upload */
#include "../model/model_load.h"    /* ModelFile */
#include "../model/tensors.h"       /* TENSOR_valuew */
#include "../reward/reward_model.h" /* RewardModelNote, reward_model_note_read */
#include "second_model.h"           /* SecondModel, SecondModelOpen, second_model_open */
#include "trainer.h"                /* Trainer */

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

/* Opens the critic; see second_model_open(). how: with .kind and .value_head unset. */
static inline void critic_open(SecondModel *c, Trainer *t, SecondModelOpen how) {
    how.kind = "critic";
    how.value_head = true;
    if (second_model_open(c, t, &how)) value_head_start(&c->model, &c->file, how.path);
    free(c->file.reward);
    c->file.reward = NULL; /* the head computes values, not scores */
}

#endif
