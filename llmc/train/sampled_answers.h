/* sampled_answers.h - answers that a model draws, in place of those of the data: the mix of generalised knowledge
 * distillation (Agarwal et al. 2024, GKD, alg. 1).
 *
 * At each step, with the probability --on-policy-share, the answers of all records of the step are drawn by the student
 * (TRL's lmbda); else they are those of the data or, with --seq-kd, drawn by the teacher (Kim and Rush 2016). A record's
 * prompt are its tokens before the first that is trained on; a record without a prompt or without an answer stays as it is.
 *
 *     SampledAnswers a;
 *     const AnswerOptions o = answer_options();
 *     Teacher teacher;
 *     Record row = {0};
 *     answers_open(&a, &trainer, &o, &teacher, longest);
 *     answers_begin(&a, R);                                        // R records of this step
 *     for (int64_t i = 0; i < R; i++) if (a.source) answers_prompt(&a, i, &row, longest);
 *     if (a.source) answers_draw(&a, longest);
 *     const Record *drawn = answers_record(&a, 0);                 // or NULL
 *     answers_close(&a);
 */
#ifndef LLMC_TRAIN_SAMPLED_ANSWERS_H
#define LLMC_TRAIN_SAMPLED_ANSWERS_H

#include "../base/error.h"      /* xrealloc, die, Error, usage_error */
#include "../base/options.h"    /* OPTION_REAL, OPTION_FLAG, OPTION_INT, Option, ... */
#include "../base/random.h"     /* RANDOM_MIXTURE, RANDOM_ROLLOUT, random_uniform */
#include "../records/shard.h"   /* Record */
#include "../rollout/rollout.h" /* Completion, RolloutRequest, Rollout, rollout_bytes, ... */
#include "teacher.h"            /* Teacher */
#include "trainer.h"            /* Trainer, state_int */

typedef struct AnswerOptions {
    double share, temperature;
    int64_t max_new;
    bool seq_kd;
} AnswerOptions;

/* TRL's defaults of sampling. */
static inline AnswerOptions answer_options(void) { return (AnswerOptions){.temperature = 0.9, .max_new = 128}; }

// clang-format off
#define ANSWER_OPTIONS(o)                                                                                              \
    OPTION_REAL("on-policy-share", 0, &(o).share,       0, 1,                                                          \
                "share of the steps whose answers the student draws itself (GKD; TRL's lmbda)"),                       \
    OPTION_FLAG("seq-kd",          0, &(o).seq_kd,      "in the other steps, let the teacher draw the answers"),       \
    OPTION_INT ("max-new-tokens",  0, &(o).max_new,     1, 1 << 20, "maximum tokens of a drawn answer"),               \
    OPTION_REAL("temperature",     0, &(o).temperature, 0.01, 100, "of drawn answers")
// clang-format on

static inline void answer_check(const AnswerOptions *o, const Option *table, bool teacher) {
    const OptionUse use[] = {
        {&o->share, teacher, "used only with --teacher"},
        {&o->seq_kd, teacher, "used only with --teacher"},
        {&o->max_new, o->share > 0 || o->seq_kd, "used only with --on-policy-share and --seq-kd"},
        {&o->temperature, o->share > 0 || o->seq_kd, "used only with --on-policy-share and --seq-kd"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    if (o->seq_kd && o->share >= 1) usage_error("--seq-kd: --on-policy-share 1 leaves no steps to the teacher");
}

enum { ANSWER_SLOTS = 64 };

typedef enum { ANSWERS_OF_DATA, ANSWERS_OF_STUDENT, ANSWERS_OF_TEACHER } AnswerSource;

typedef struct SampledAnswers {
    Trainer *t;
    const AnswerOptions *o;
    Rollout student, teacher;
    Sampling how;
    AnswerSource source;     /* of this step */
    int64_t count;           /* records of this step */
    Record *record;          /* (count) with the drawn answer; count 0: as in the data */
    RolloutRequest *request; /* (count) */
    int64_t *place;          /* (count) the record of each request */
    Completion *completion;  /* (count) */
    int64_t requests, capacity;
} SampledAnswers;

static inline bool answers_on(const AnswerOptions *o) { return o->share > 0 || o->seq_kd; }

/* Memory of the engines in bytes, for trainer_announce(). longest: tokens of the longest record. */
static inline size_t answers_bytes(const Trainer *t, const AnswerOptions *o, const Teacher *teacher, int32_t longest) {
    size_t bytes = 0;
    if (o->share > 0) bytes += rollout_bytes(&t->model.config, t->backend, ANSWER_SLOTS, longest, (int)o->max_new);
    if (o->seq_kd) bytes += rollout_bytes(&teacher->model.config, t->backend, ANSWER_SLOTS, longest, (int)o->max_new);
    return bytes;
}

/* Makes the engines. longest: tokens of the longest record. */
static inline void answers_open(SampledAnswers *a, Trainer *t, const AnswerOptions *o, const Teacher *teacher,
                                int32_t longest) {
    Error e;
    *a = (SampledAnswers){.t = t, .o = o};
    if (!answers_on(o)) return;
    if (t->dist.ranks > 1) usage_error("--on-policy-share and --seq-kd: run on one rank only");
    const int new_max = (int)o->max_new;
    if (o->share > 0 && !rollout_new(&a->student, &t->model, ANSWER_SLOTS, longest, new_max, &e)) die("%s", e.text);
    if (o->seq_kd && !rollout_new(&a->teacher, &teacher->model, ANSWER_SLOTS, longest, new_max, &e)) die("%s", e.text);
    a->student.flops = a->teacher.flops = &t->flops;
    a->how = sampling_default();
    a->how.temperature = (float)o->temperature;
    a->how.max_new = new_max;
    a->how.seed = (uint64_t)t->o->seed;
    if (!sampling_add_stops(&a->how, &t->text.ends, &e)) die("%s", e.text);
}

/* Begins a step of n records: chooses who answers. The choice depends on the seed and the step alone. */
static inline void answers_begin(SampledAnswers *a, int64_t n) {
    a->source = ANSWERS_OF_DATA;
    a->count = n;
    a->requests = 0;
    if (!answers_on(a->o)) return;
    const bool own = random_uniform((uint64_t)a->t->o->seed, RANDOM_MIXTURE + (1ull << 48), (uint64_t)a->t->step) <
                     (float)a->o->share;
    a->source = own ? ANSWERS_OF_STUDENT : a->o->seq_kd ? ANSWERS_OF_TEACHER : ANSWERS_OF_DATA;
    json_object_set_new(a->t->state, "on_policy_steps", json_integer(state_int(a->t->state, "on_policy_steps") + own));
    if (n <= a->capacity) return;
    a->record = (Record *)xrealloc(a->record, (size_t)n, sizeof *a->record);
    memset(a->record + a->capacity, 0, (size_t)(n - a->capacity) * sizeof *a->record);
    a->request = (RolloutRequest *)xrealloc(a->request, (size_t)n, sizeof *a->request);
    a->completion = (Completion *)xrealloc(a->completion, (size_t)n, sizeof *a->completion);
    a->place = (int64_t *)xrealloc(a->place, (size_t)n, sizeof *a->place);
    a->capacity = n;
}

/* Takes record i of the step, whose prompt is to be answered. longest: maximum tokens of a sequence. */
static inline void answers_prompt(SampledAnswers *a, int64_t i, const Record *r, int32_t longest) {
    Record *to = &a->record[i];
    int32_t prompt = 0;
    while (prompt < r->count && !r->mask[prompt]) prompt++;
    to->count = 0;
    if (!prompt || prompt == r->count || prompt >= longest) return;
    const size_t most = (size_t)prompt + (size_t)a->o->max_new;
    to->tokens = (int32_t *)xrealloc(to->tokens, most, sizeof *to->tokens);
    to->mask = (uint8_t *)xrealloc(to->mask, most, 1);
    memcpy(to->tokens, r->tokens, (size_t)prompt * sizeof *to->tokens);
    to->count = prompt;
    a->place[a->requests] = i;
    a->request[a->requests] = (RolloutRequest){.prompt = to->tokens,
                                               .prompt_len = prompt,
                                               .samples = 1,
                                               .id = ((uint64_t)a->t->step << 24) + (uint64_t)i,
                                               .out = &a->completion[a->requests]};
    a->requests++;
}

/* Draws the answers. longest: maximum tokens of a sequence; the rest is cut off. */
static inline void answers_draw(SampledAnswers *a, int32_t longest) {
    Error e;
    Rollout *engine = a->source == ANSWERS_OF_STUDENT ? &a->student : &a->teacher;
    a->how.stream = RANDOM_ROLLOUT;
    if (!rollout_run(engine, &a->how, a->request, a->requests, NULL, NULL, &e)) die("%s", e.text);
    for (int64_t k = 0; k < a->requests; k++) {
        Record *to = &a->record[a->place[k]];
        Completion *c = &a->completion[k];
        const int32_t prompt = to->count, n = c->count < longest - prompt ? c->count : longest - prompt;
        memcpy(to->tokens + prompt, c->tokens, (size_t)n * sizeof *to->tokens);
        memset(to->mask, 0, (size_t)prompt);
        memset(to->mask + prompt, 1, (size_t)n);
        to->count = prompt + n;
        completion_free(c);
    }
}

/* The record of the step with its drawn answer, or NULL: it is as in the data. */
static inline const Record *answers_record(const SampledAnswers *a, int64_t i) {
    return a->source && a->record[i].count ? &a->record[i] : NULL;
}

static inline void answers_close(SampledAnswers *a) {
    if (!a->o || !answers_on(a->o)) return;
    rollout_free(&a->student), rollout_free(&a->teacher);
    for (int64_t i = 0; i < a->capacity; i++) free(a->record[i].tokens), free(a->record[i].mask);
    free(a->record), free(a->request), free(a->completion), free(a->place);
}

#endif
