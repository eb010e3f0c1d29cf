/* teacher.h - the teacher of distillation: a second model whose distributions of the next token the model learns.
 *
 * The loss is the mean over targets of the divergence of --divergence (model/backend.h), over the whole vocabulary, between
 * the student's distribution and the teacher's; a trainer may weight it and add a loss of its own. The teacher's tokens must be the student's, and it must have
 * a position for every token of the run. Its weights are frozen: a resumed run must name the same file.
 *
 *     Teacher t;
 *     TeacherStats stats = {0};
 *     TeacherOptions o = teacher_options(TOKEN_FORWARD_KL);
 *     teacher_open(&t, &trainer, &o, longest);                     // before trainer_announce()
 *     bytes += teacher_bytes(&t, rows);
 *     teacher_begin(&t, rows);                                     // after it
 *     teacher_weigh(&t, 0, batch.targets, 1 / N);
 *     teacher_train(&t, &work, &batch, 1.0f, dlogp, &out);         // forward and backward pass
 *     loss += teacher_add(&t, 0, batch.targets, out.logp, out.argmax, &stats) / N;
 *     teacher_close(&t);
 */
#ifndef LLMC_TRAIN_TEACHER_H
#define LLMC_TRAIN_TEACHER_H

#include "../base/error.h"        /* Error, die, usage_error, warn, ... */
#include "../base/options.h"      /* OPTION_REAL, OPTION_CHOICE, OPTION_GROUP, OPTION_TEXT, ... */
#include "../model/backend.h"     /* TOKEN_JSD, TokenDivergenceKind, TOKEN_REVERSE_KL, TOKEN_SKEW_FORWARD, ... */
#include "../model/batch.h"       /* Batch */
#include "../model/divergence.h"  /* ModelDivergence, DivergenceOutput, TOKEN_DIVERGENCE_CHOICES, ... */
#include "../model/model.h"       /* Model, model_free, model_held_bytes */
#include "../model/model_file.h"  /* model_load_as */
#include "../model/model_fits.h"  /* FitSide, model_fits, fit_model, model_fits_policy */
#include "../model/model_load.h"  /* ModelFile, ModelLoad, model_file_free */
#include "../model/transformer.h" /* ModelOutput */
#include "../model/workspace.h"   /* Workspace, workspace_bytes, workspace_free, workspace_new */
#include "../report/metrics.h"    /* Metrics, metrics_set */
#include "trainer.h"              /* Trainer, trainer_count_flops, trainer_file, trainer_side */

typedef struct TeacherOptions {
    const char *path;
    int kind; /* a TokenDivergenceKind */
    double beta, temperature;
} TeacherOptions;

/* kind: the default of --divergence. */
static inline TeacherOptions teacher_options(TokenDivergenceKind kind) {
    return (TeacherOptions){.kind = kind, .beta = 0.5, .temperature = 1};
}

// clang-format off
#define TEACHER_OPTIONS(o)                                                                                             \
    OPTION_GROUP("Distillation"),                                                                                      \
    OPTION_TEXT  ("teacher",             0, &(o).path,        "FILE",                                                  \
                  "model with the same tokens whose distributions are learned"),                                       \
    OPTION_CHOICE("divergence",          0, &(o).kind,        TOKEN_DIVERGENCE_CHOICES,                                \
                  "of the student's distribution from the teacher's, at each target, over the whole vocabulary"),      \
    OPTION_REAL  ("distill-beta",        0, &(o).beta,        0, 1,                                                    \
                  "jsd: weight of the teacher in the mixture; skew_*: part of the first distribution in the second "   \
                  "(default: 0.1)"),                                                                                   \
    OPTION_REAL  ("distill-temperature", 0, &(o).temperature, 0.01, 100,                                               \
                  "divides both models' logits; the loss is not multiplied by its square")
// clang-format on

/* Rejects options without effect and values without a meaning, and sets the default that depends on the divergence. */
static inline void teacher_check(TeacherOptions *o, const Option *table) {
    const bool skew = o->kind == TOKEN_SKEW_FORWARD || o->kind == TOKEN_SKEW_REVERSE;
    const OptionUse use[] = {
        {&o->kind, o->path != NULL, "used only with --teacher"},
        {&o->beta, o->path && (skew || o->kind == TOKEN_JSD), "used only by --divergence jsd and skew_*"},
        {&o->temperature, o->path != NULL, "used only with --teacher"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    if (skew && !option_given(&o->beta)) o->beta = 0.1;
    if (o->kind == TOKEN_JSD && (o->beta <= 0 || o->beta >= 1))
        usage_error("--distill-beta %g: jsd is 0 there for all distributions; use --divergence %s", o->beta,
                    o->beta <= 0 ? "forward_kl" : "reverse_kl");
    if (skew && o->beta >= 1)
        usage_error("--distill-beta %g: the divergence is 0 there for all distributions", o->beta);
    if (o->path && !strcmp(o->path, "-")) usage_error("--teacher: give the teacher's file, not standard input");
}

/* Totals over targets. Doubles only, so that ranks can add them. */
typedef struct TeacherStats {
    double value, forward_kl, reverse_kl, logp, own_logp, entropy, agreement, targets;
} TeacherStats;

typedef struct Teacher {
    Trainer *t;
    const TeacherOptions *o;
    bool on;  /* there is a teacher */
    bool own; /* its model is `model`, and not one of the trainer's */
    Model model;
    ModelFile file;
    Workspace work;
    ModelDivergence apart;
    DivergenceOutput out; /* of the micro-batch */
    float *weight;        /* (targets of a micro-batch) */
} Teacher;

/* Checks that the two models' tokens are the same. Models whose tokenizers are may have different rows of padding in their
 * vocabularies; without tokenizers, the vocabularies must be equal. */
static inline bool teacher_fits(const FitSide *student, const FitSide *teacher, Error *note, Error *e) {
    FitSide a = *student, b = *teacher;
    Error why;
    if (a.tokenizer && b.tokenizer) a.vocab = b.vocab = a.vocab < b.vocab ? a.vocab : b.vocab;
    if (!model_fits(&b, &a, 0, note, &why) || !model_fits(&a, &b, 0, NULL, &why))
        return error_set(e,
                         "%s; the teacher's tokens must be the student's: distil through text, with generate and then "
                         "train_sft",
                         why.text);
    return true;
}

/* Whether the teacher is the model in training, with its current weights. */
static inline bool teacher_is_self(const TeacherOptions *o) { return o->path && !strcmp(o->path, "self"); }

/* Sets how the teacher's distributions are compared. */
static inline void teacher_compare(Teacher *r, const Model *m) {
    r->on = true;
    r->t->teacher = &m->config;
    r->apart = (ModelDivergence){.teacher = m,
                                 .work = &r->work,
                                 .kind = (TokenDivergenceKind)r->o->kind,
                                 .temperature = (float)r->o->temperature,
                                 .beta = (float)r->o->beta};
}

/* Loads the teacher. longest: positions of the longest sequence. Call it after trainer_open() and before
 * trainer_announce(). Errors end the program. Collective. */
static inline void teacher_open(Teacher *r, Trainer *t, const TeacherOptions *o, int32_t longest) {
    Error e;
    *r = (Teacher){.t = t, .o = o};
    if (teacher_is_self(o)) teacher_compare(r, &t->model);
    if (!o->path || teacher_is_self(o)) return;
    const ModelLoad how = {.seed = (uint64_t)t->o->seed};
    if (!model_load_as(&r->model, &r->file, o->path, &how, t->backend, t->device, NULL, &e)) die("%s", e.text);
    if (!model_fits_policy(&r->file, o->path, &e)) die("%s", e.text);
    Error note = {0};
    const FitSide student = trainer_side(t), teacher = fit_model(o->path, &r->model.config, &r->file);
    if (!teacher_fits(&student, &teacher, &note, &e)) die("%s", e.text);
    if (note.text[0] && !t->dist.rank) warn("%s", note.text);
    if (longest > r->model.config.context)
        die("%s: the teacher's context of %d is shorter than the longest sequence, %d", o->path,
            r->model.config.context, longest);
    if (r->file.hash == t->file.hash && !t->o->resume && !t->dist.rank)
        warn("--teacher %s: it is the model itself: their divergence is 0 until the model has changed", o->path);
    trainer_file(t, "teacher", o->path, r->file.hash);
    r->own = true;
    teacher_compare(r, &r->model);
}

/* Memory in bytes, for trainer_announce(): activations, and the weights on a GPU or their packed copy on a CPU. */
static inline size_t teacher_bytes(const Teacher *r, int rows) {
    if (!r->on) return 0;
    const Model *m = r->apart.teacher;
    return (r->own ? model_held_bytes(m) : 0) + workspace_bytes(&m->config, m->backend, rows, rows, rows, false, 0);
}

/* Allocates the results. */
static inline void teacher_results(Teacher *r, int rows) {
    const size_t n = (size_t)rows;
    float **all[] = {&r->out.value, &r->out.forward_kl, &r->out.reverse_kl, &r->out.logp, &r->out.entropy, &r->weight};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i] = (float *)xcalloc(n, sizeof(float));
    r->out.argmax = (int32_t *)xcalloc(n, sizeof *r->out.argmax);
}

/* Allocates activations and results. rows: of the largest micro-batch. */
static inline void teacher_begin(Teacher *r, int rows) {
    Error e;
    if (!r->on) return;
    if (!workspace_new(&r->work, r->apart.teacher, rows, rows, rows, false, 0, &e)) die("%s", e.text);
    teacher_results(r, rows);
}

/* Takes a model of the trainer's with its workspace as the teacher, by KL(student || teacher). */
static inline void teacher_wrap(Teacher *r, Trainer *t, const Model *m, const Workspace *w, int rows,
                                float temperature) {
    *r = (Teacher){.t = t, .on = true};
    r->apart = (ModelDivergence){.teacher = m, .work = w, .kind = TOKEN_REVERSE_KL, .temperature = temperature};
    teacher_results(r, rows);
}

static inline void teacher_close(Teacher *r) {
    if (!r->on) return;
    if (r->o) workspace_free(&r->work, r->apart.teacher);
    if (r->own) model_free(&r->model);
    model_file_free(&r->file);
    free(r->out.value), free(r->out.forward_kl), free(r->out.reverse_kl), free(r->out.logp), free(r->out.entropy);
    free(r->out.argmax), free(r->weight);
}

/* Forward pass of both models on a batch: what `out` requests of the student, at a temperature of its own, and r->out.
 * read: the batch that the teacher reads, or NULL for the same one. */
static inline void teacher_forward(const Teacher *r, const Workspace *w, const Batch *b, const Batch *read,
                                   float temperature, const ModelOutput *out) {
    model_divergence(&r->t->model, w, b, &r->apart, read, temperature, out, &r->out);
    trainer_count_flops(r->t, r->apart.teacher, read ? read : b, 1);
}

/* Sets the weights of targets [first, end) of the micro-batch in the loss. */
static inline void teacher_weigh(Teacher *r, int32_t first, int32_t end, double weight) {
    for (int32_t i = first; i < end; i++) r->weight[i] = (float)weight;
}

/* Forward and backward pass of the student, for a loss of which the gradient is known in advance: the weights are set;
 * dlogp: NULL, or the gradient of another part of the loss. */
static inline void teacher_train(const Teacher *r, const Workspace *w, const Batch *b, float temperature,
                                 const float *dlogp, const ModelOutput *out) {
    model_divergence_both(&r->t->model, w, b, &r->apart, NULL, temperature, r->weight, dlogp, out, &r->out);
    trainer_count_flops(r->t, r->apart.teacher, b, 1);
}

/* Backward pass after teacher_forward(); the weights are set. dlogp, dentropy: of another part of the loss, or NULL. */
static inline void teacher_backward(const Teacher *r, const Workspace *w, const Batch *b, float temperature,
                                    const float *dlogp, const float *dentropy) {
    model_divergence_backward(&r->t->model, w, b, &r->apart, temperature, r->weight, dlogp, dentropy);
}

/* The first target at which the teacher's log-probability is NaN, or -1. */
static inline int32_t teacher_broken(const Teacher *r, int32_t targets) {
    for (int32_t i = 0; i < targets; i++)
        if (isnan(r->out.logp[i])) return i;
    return -1;
}

/* Adds targets [first, end) of a micro-batch to the totals; logp, argmax: the student's. Returns the sum of the
 * divergences. */
static inline double teacher_add(const Teacher *r, int32_t first, int32_t end, const float *logp, const int32_t *argmax,
                                 TeacherStats *s) {
    double sum = 0;
    for (int32_t i = first; i < end; i++) {
        sum += r->out.value[i];
        s->forward_kl += r->out.forward_kl[i];
        s->reverse_kl += r->out.reverse_kl[i];
        s->logp += r->out.logp[i];
        s->own_logp += logp[i];
        s->entropy += r->out.entropy[i];
        s->agreement += argmax[i] == r->out.argmax[i];
    }
    s->value += sum;
    s->targets += end - first;
    return sum;
}

/* Sets the metrics of a step, or with prefix "eval_" those of an evaluation. */
static inline void teacher_metrics(Metrics *m, const char *prefix, const TeacherStats *s) {
    const struct {
        const char *name;
        double total;
    } all[] = {{"distill/divergence", s->value},      {"distill/forward_kl", s->forward_kl},
               {"distill/reverse_kl", s->reverse_kl}, {"distill/agreement", s->agreement},
               {"distill/nll", -s->own_logp},         {"teacher/logp", s->logp},
               {"teacher/entropy", s->entropy}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s%s", prefix, all[i].name);
        metrics_set(m, name, all[i].total / s->targets);
    }
}

/* Ends a run whose first step shows that distillation has no effect. Call it after trainer_update(). */
static inline void teacher_guard(const Teacher *r, const TeacherStats *s) {
    const Trainer *t = r->t;
    if (!r->on || !r->o || t->step != 1 || t->update.skipped) return;
    if (s->value / s->targets > 1e-9 && t->update.grad_norm > 0) return;
    die("%s: distillation has no effect: the divergence is %g and its gradient's norm %g; is it the model itself?",
        r->o->path, s->value / s->targets, t->update.grad_norm);
}

#endif
