/* distiller.h - on-policy distillation: a teacher's part in the loss on the policy's own samples.
 *
 * y_t is a token that the student drew, S_t and T_t are the distributions of student and teacher at its prefix, and c is
 * --distill-coef. --distill-estimator says how the divergence at the visited prefixes is made small:
 *
 *   exact     L += c mean_t D(S_t, T_t) over the whole vocabulary, without a gradient through the sampling (Agarwal et al.
 *             2024, GKD, alg. 1)
 *   sampled   A_t += -c (log S_t(y_t) - log T_t(y_t)), with the sampler's log S, in the policy loss (Thinking Machines
 *             2025, "On-Policy Distillation"); its gradient has the mean of that of exact with reverse_kl, and more variance
 *   minillm   exact with reverse_kl, and A_t += -c sum_{t' > t} g^(t' - t - 1) (log S - log T)(y_t') / sum_{t' > t}
 *             g^(t' - t - 1), g = --distill-gamma, for the effect of a token on those after it (Gu et al. 2024, MiniLLM,
 *             eq. 4, with the length-normalised return of section 2.3)
 *
 * A divergence of whole distributions does not depend on y_t: as an advantage its gradient would be 0 in expectation, so
 * there is no such combination. The same code gives the exact KL to a reference (--kl-estimator exact):
 *
 *   loss      L += beta mean_t KL(S_t || R_t)
 *   reward    also A_t += -beta sum_{t' > t} KL(S_t' || R_t'): together the gradient of the KL of whole completions
 *
 *     Distiller d;
 *     PolicyBatch part = {0};
 *     GenerationSlice micro = {0};
 *     const DistillerOptions o = distiller_options();
 *     distiller_open(&d, &g, &o);                                      // before trainer_announce()
 *     distiller_begin(&d, rows);                                       // after it
 *     distiller_forward(&d, &g, &micro, &work, &part);                 // instead of model_forward()
 *     loss += distiller_backward(&d, &g, &micro, &work, N, dentropy);  // instead of model_backward()
 *     distiller_log(&d);
 *     distiller_close(&d);
 */
#ifndef LLMC_TRAIN_DISTILLER_H
#define LLMC_TRAIN_DISTILLER_H

#include "../base/error.h"        /* usage_error, Error, die, xcalloc, ... */
#include "../base/options.h"      /* OPTION_REAL, OPTION_CHOICE, OPTION_TEXT, Option, ... */
#include "../dist/dist.h"         /* DIST_FIELDS, dist_sum */
#include "../loss/policy.h"       /* PolicyBatch */
#include "../model/backend.h"     /* DTYPE_BF16, TOKEN_REVERSE_KL */
#include "../model/batch.h"       /* Batch */
#include "../model/divergence.h"  /* DivergenceOutput */
#include "../model/model.h"       /* model_copy, model_set_longest */
#include "../model/model_file.h"  /* MODEL_FLOAT32, model_load_as, model_save */
#include "../model/model_load.h"  /* ModelLoad */
#include "../model/transformer.h" /* ModelOutput, model_backward */
#include "../model/workspace.h"   /* Workspace */
#include "../report/metrics.h"    /* metrics_set, Metrics */
#include "companion.h"            /* companion_resume */
#include "generation.h"           /* Generation, GenerationSlice, generation_longest */
#include "reference.h"            /* Reference, reference_mix */
#include "teacher.h"              /* teacher_is_self, Teacher, TeacherStats, TEACHER_OPTIONS, ... */
#include "teacher_prompts.h"      /* TeacherPrompts, teacher_prompts_close, teacher_prompts_open, ... */
#include "trainer.h"              /* Trainer, trainer_later, trainer_set_longest */

typedef enum { DISTILL_EXACT, DISTILL_SAMPLED, DISTILL_MINILLM } DistillEstimator;

typedef struct DistillerOptions {
    TeacherOptions teacher;
    int estimator; /* a DistillEstimator */
    double coef, gamma;
    const char *prompt; /* field of the teacher's prompts, or NULL */
    double ema;         /* weight of the policy in each update of a teacher that is the model itself; 1: no average */
} DistillerOptions;

static inline DistillerOptions distiller_options(void) {
    return (DistillerOptions){.teacher = teacher_options(TOKEN_REVERSE_KL), .coef = 1, .gamma = 1, .ema = 1};
}

// clang-format off
#define DISTILLER_OPTIONS(o)                                                                                           \
    TEACHER_OPTIONS((o).teacher),                                                                                      \
    OPTION_CHOICE("distill-estimator",   0, &(o).estimator,   "exact|sampled|minillm",                                 \
                  "the divergence itself, its estimate as an advantage of the tokens drawn, or both with the later tokens"),\
    OPTION_REAL  ("distill-coef",        0, &(o).coef,        1e-9, 1e6,                                               \
                  "weight of distillation beside the reward (--reward none: distillation alone)"),                     \
    OPTION_TEXT  ("teacher-prompt",      0, &(o).prompt,      "FIELD",                                                 \
                  "the teacher reads this field of the row as its prompt; --teacher self: the model itself does"),     \
    OPTION_REAL  ("teacher-ema",         0, &(o).ema,         1e-9, 1,                                                 \
                  "--teacher self: after each step, teacher = X policy + (1 - X) teacher; 1: the current weights"),    \
    OPTION_REAL  ("distill-gamma",       0, &(o).gamma,       0, 1, "minillm: discount of later tokens")
// clang-format on

/* Rejects options without effect. temperature: of sampling, the default of --distill-temperature. */
static inline void distiller_check(DistillerOptions *o, const Option *table, double temperature) {
    const bool on = o->teacher.path != NULL;
    const OptionUse use[] = {
        {&o->estimator, on, "used only with --teacher"},
        {&o->coef, on, "used only with --teacher"},
        {&o->prompt, on, "used only with --teacher"},
        {&o->ema, teacher_is_self(&o->teacher), "used only with --teacher self"},
        {&o->gamma, on && o->estimator == DISTILL_MINILLM, "used only by --distill-estimator minillm"},
        {&o->teacher.kind, !on || o->estimator == DISTILL_EXACT,
         "--distill-estimator sampled and minillm estimate reverse_kl"},
    };
    teacher_check(&o->teacher, table);
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    if (teacher_is_self(&o->teacher) && !o->prompt)
        usage_error(
            "--teacher self: give --teacher-prompt, a field with another prompt; after the same one there is nothing to learn");
    if (!option_given(&o->teacher.temperature)) o->teacher.temperature = temperature;
    if (o->estimator != DISTILL_EXACT && o->teacher.temperature != temperature)
        usage_error(
            "--distill-temperature: the samples are drawn at --temperature %g, which --distill-estimator sampled "
            "and minillm need",
            temperature);
}

/* Rejects what a teacher that is an average of the weights excludes. adapters: only adapters are trained; followed: the option of
 * a reference that follows the policy, or NULL. */
static inline void distiller_check_ema(const DistillerOptions *o, bool adapters, const char *followed) {
    if (o->ema == 1) return;
    if (adapters) usage_error("--teacher-ema: cannot be combined with --lora-rank and --adapter");
    if (followed) usage_error("--teacher-ema: cannot be combined with %s", followed);
}

typedef struct Distiller {
    Teacher teacher;
    DistillEstimator estimator;
    double coef, gamma, ema;
    bool penalty;           /* the teacher is the reference of a KL penalty */
    const char *field;      /* of the teacher's prompts, or NULL */
    TeacherPrompts prompts; /* if there is a field */
    bool in_reward;         /* of which later tokens count, too */
    TeacherStats stats;     /* of the step */
    int32_t *argmax;        /* (targets of a micro-batch) */
    float *advantage;       /* (targets of a micro-batch) of tokens */
} Distiller;

static inline bool distiller_on(const Distiller *d) { return d->teacher.on; }

/* Whether the loss has the divergence itself. */
static inline bool distiller_exact(const Distiller *d) { return d->penalty || d->estimator != DISTILL_SAMPLED; }

/* The trainer's companion.save(). */
static inline bool distiller_save(void *distiller, const char *path, Error *e) {
    const Teacher *r = &((const Distiller *)distiller)->teacher;
    return model_save(&r->model, &r->t->file, path, MODEL_FLOAT32, NULL, NULL, e);
}

/* Gives the teacher weights of its own: those of the model, or of a resumed run's teacher. A training state has a file with
 * them next to it (companion.h). */
static inline void distiller_open_average(Distiller *d, int32_t longest) {
    Error e;
    Teacher *r = &d->teacher;
    Trainer *t = r->t;
    const ModelLoad how = {.seed = (uint64_t)t->o->seed};
    const char *resumed = companion_resume(&t->companion, "teacher", t->o->resume, t->step);
    if (t->o->dtype == DTYPE_BF16)
        usage_error("--teacher-ema: give --dtype float32; the rounding of bf16 would lose the teacher's small steps");
    const bool ok = resumed ? model_load_as(&r->model, &r->file, resumed, &how, t->backend, t->device, NULL, &e)
                            : model_copy(&r->model, &t->model, &e);
    if (!ok) die("%s", e.text);
    if (r->model.parameters != t->model.parameters) die("%s: the teacher must have the shape of the model", resumed);
    model_set_longest(&r->model, longest);
    r->own = true;
    teacher_compare(r, &r->model);
    t->companion.save = distiller_save;
    t->companion.context = d;
}

/* Moves a teacher that is an average of the weights. Call it after each optimizer step. */
static inline void distiller_follow(const Distiller *d) {
    if (d->ema < 1) reference_mix(&d->teacher.model, &d->teacher.t->model, d->ema);
}

/* Loads the teacher, if there is one, and reads its prompts. Call it after generation_open_prompts() and before
 * trainer_announce(). Collective. */
static inline void distiller_open(Distiller *d, const Generation *g, const DistillerOptions *o) {
    Error e;
    const int32_t context = g->t->model.config.context;
    int64_t longest = generation_longest(g);
    *d = (Distiller){.estimator = (DistillEstimator)o->estimator,
                     .coef = o->coef,
                     .gamma = o->gamma,
                     .ema = o->ema,
                     .field = o->prompt};
    if (o->prompt) {
        if (!teacher_prompts_read(&d->prompts, &g->train, &g->t->text, o->prompt, &e)) die("%s", e.text);
        longest = d->prompts.longest + g->o->max_completion;
        teacher_prompts_open(&d->prompts, g);
    }
    if (teacher_is_self(&o->teacher) && longest > context)
        die("--teacher-prompt %s: the longest prompt with its completion has %lld tokens, the model's context %d",
            o->prompt, (long long)longest, context);
    if (teacher_is_self(&o->teacher) && longest > generation_longest(g)) trainer_set_longest(g->t, (int32_t)longest);
    teacher_open(&d->teacher, g->t, &o->teacher, (int32_t)longest);
    if (o->ema < 1) distiller_open_average(d, (int32_t)longest);
}

/* Rows of the teacher's largest batch, if the policy's has so many. */
static inline int distiller_rows(const Distiller *d, int rows) { return d->field ? d->prompts.rows : rows; }

static inline void distiller_arrays(Distiller *d, int rows) {
    d->argmax = (int32_t *)xcalloc((size_t)rows, sizeof *d->argmax);
    d->advantage = (float *)xcalloc((size_t)rows, sizeof *d->advantage);
}

/* Allocates what a run with a teacher needs. rows: of the largest micro-batch. */
static inline void distiller_begin(Distiller *d, int rows) {
    if (!distiller_on(d)) return;
    teacher_begin(&d->teacher, distiller_rows(d, rows));
    distiller_arrays(d, rows);
}

/* Takes the reference for an exact KL penalty. in_reward: of whole completions. */
static inline void distiller_penalise(Distiller *d, Reference *r, int rows, float temperature, bool in_reward) {
    *d = (Distiller){.penalty = true, .in_reward = in_reward, .ema = 1};
    teacher_wrap(&d->teacher, r->t, &r->model, &r->work, rows, temperature);
    distiller_arrays(d, rows);
}

static inline void distiller_close(Distiller *d) {
    teacher_close(&d->teacher);
    teacher_prompts_close(&d->prompts);
    free(d->argmax), free(d->advantage);
}

/* Sets the advantages of the tokens of one completion, [begin, end) of the slice. */
static inline void distiller_advantages(Distiller *d, const GenerationSlice *x, int32_t begin, int32_t end) {
    const DivergenceOutput *out = &d->teacher.out;
    double sum = 0, length = 0; /* of the tokens after t: of the terms, and of the discounts */
    for (int32_t t = end - 1; t >= begin; t--) {
        const double gap = (double)x->sampler_logp[t] - out->logp[t];
        if (d->penalty) {
            d->advantage[t] = (float)(-d->coef * sum);
            sum += out->value[t];
        } else if (d->estimator == DISTILL_SAMPLED) d->advantage[t] = (float)(-d->coef * gap);
        else {
            d->advantage[t] = length > 0 ? (float)(-d->coef * sum / length) : 0;
            sum = gap + d->gamma * sum;
            length = 1 + d->gamma * length;
        }
    }
}

/* Notes a teacher that is not finite, which ends the run. */
static inline void distiller_verify(Distiller *d, const Generation *g, const GenerationSlice *x) {
    Error e;
    const int32_t bad = teacher_broken(&d->teacher, x->offset[x->count]);
    int32_t i = 0;
    if (bad < 0) return;
    while (x->offset[i + 1] <= bad) i++;
    error_set(&e, "%s: its logits are not finite (prompt %lld)", d->penalty ? "the reference" : d->teacher.o->path,
              (long long)g->scored[x->first + i].prompt);
    trainer_later(d->teacher.t, &e);
}

/* Forward pass of both models on the generation's micro-batch x: fills x.logp and x.entropy, and the advantages of tokens
 * of `b`. */
static inline void distiller_forward(Distiller *d, Generation *g, const GenerationSlice *x, const Workspace *w,
                                     PolicyBatch *b) {
    const ModelOutput out = {.logp = x->logp, .entropy = x->entropy, .argmax = d->argmax};
    const Batch *read = d->field ? teacher_prompts_pack(&d->prompts, g, x->first, x->first + x->count) : NULL;
    teacher_forward(&d->teacher, w, &g->batch, read, (float)g->o->temperature, &out);
    distiller_verify(d, g, x);
    for (int32_t i = 0; i < x->count; i++) {
        if (x->counts[i]) teacher_add(&d->teacher, x->offset[i], x->offset[i + 1], x->logp, d->argmax, &d->stats);
        distiller_advantages(d, x, x->offset[i], x->offset[i + 1]);
    }
    if (d->penalty ? d->in_reward : d->estimator != DISTILL_EXACT) b->token_advantage = d->advantage;
}

/* Backward pass of the policy loss, whose gradient is in x.dlogp and dentropy (NULL: none), and of the divergence. N: tokens
 * of the step that count. Returns the divergence's part of the loss. */
static inline double distiller_backward(Distiller *d, Generation *g, const GenerationSlice *x, const Workspace *w,
                                        double N, const float *dentropy) {
    double sum = 0;
    const double weight = distiller_exact(d) ? d->coef / fmax(N, 1) : 0;
    for (int32_t i = 0; i < x->count; i++) {
        teacher_weigh(&d->teacher, x->offset[i], x->offset[i + 1], x->counts[i] ? weight : 0);
        for (int32_t t = x->offset[i]; t < x->offset[i + 1] && x->counts[i]; t++) sum += d->teacher.out.value[t];
    }
    if (weight > 0) teacher_backward(&d->teacher, w, &g->batch, (float)g->o->temperature, x->dlogp, dentropy);
    else model_backward(&d->teacher.t->model, w, &g->batch, (float)g->o->temperature, x->dlogp, dentropy, NULL);
    return weight * sum;
}

/* Sums the totals of the step over the ranks. Collective. */
static inline void distiller_sum(Distiller *d) {
    if (distiller_on(d)) dist_sum(&d->teacher.t->dist, DIST_FIELDS(d->stats));
}

/* Logs the step and clears its totals. */
static inline void distiller_log(Distiller *d) {
    const TeacherStats *s = &d->stats;
    Metrics *m = &d->teacher.t->metrics;
    if (!distiller_on(d)) return;
    if (d->penalty) metrics_set(m, "kl", s->value / s->targets);
    else {
        teacher_metrics(m, "", s);
        metrics_set(m, "teacher_kl", (s->own_logp - s->logp) / s->targets);
    }
    d->stats = (TeacherStats){0};
}

#endif
