/* prime.h - PRIME in train_ppo: the implicit process reward model (PRM), its training and the advantages that it gives.
 *
 * The PRM is a second language model (second_model.h) that starts from the model of -c, or from --prm. Each generation trains
 * it on the outcomes of the completions, one step per mini-batch, and then or before that takes the rewards of their tokens
 * from it; formulas are in ../loss/implicit_prm.h. The PRM, the reference and the policy are run at the sampling temperature.
 *
 * Outcomes are scores from 0 to 1. Completions that do not count (no score, a prompt outside of --filter-accuracy) are in no
 * loss, mean or metric. Errors end the program (see trainer.h).
 *
 *     Prime p;
 *     PrimeOptions o = prime_options();
 *     prime_open(&p, &o, &g, 1.0);                                          // after trainer_open(); gamma is 1
 *     for (each generation) {
 *         prime_outcomes(&p, score);                                        // checks them, filters prompts
 *         prime_rewards(&p, score);                                         // trains the PRM; token rewards
 *         prime_advantages(&p, score, advantage);                           // before they are whitened
 *         prime_log(&p);
 *     }
 *     prime_write(&p);
 *     prime_close(&p);
 */
#ifndef LLMC_TRAIN_PRIME_H
#define LLMC_TRAIN_PRIME_H

#include "../base/error.h"        /* usage_error, xcalloc, Error, die, ... */
#include "../base/options.h"      /* OPTION_REAL, OPTION_CHOICE, OPTION_TEXT, OPTION_FLAG, ... */
#include "../dist/dist.h"         /* dist_total */
#include "../loss/implicit_prm.h" /* ImplicitPrmBatch, ImplicitPrmConfig, implicit_prm_rewards, ... */
#include "../model/micro_plan.h"  /* MicroPlan */
#include "../model/model_fits.h"  /* model_fits_policy */
#include "../model/transformer.h" /* ModelOutput, model_backward, model_forward */
#include "../report/metrics.h"    /* metrics_set, Metrics, metrics_warn */
#include "generation.h"           /* Generation, generation_tokens_max, GenerationSlice, generation_complete, ... */
#include "second_model.h"         /* SecondModel, SecondModelOpen, second_model_check_output, ... */
#include "trainer.h"              /* Trainer, trainer_count_flops, trainer_require */

#define PRIME_UPDATE_CHOICES "after|before"
typedef enum { PRIME_AFTER, PRIME_BEFORE } PrimeUpdate; /* in the order of PRIME_UPDATE_CHOICES */

typedef struct PrimeOptions {
    const char *prm, *output;
    double learning_rate;
    int64_t warmup; /* initial optimizer steps that train only the PRM */
    int update;     /* a PrimeUpdate */
    ImplicitPrmConfig loss;
    bool filter;
    double lower, upper; /* bounds of the filter, both included */
} PrimeOptions;

/* Defaults of the paper and of verl, which differ in --prm-update: the paper's algorithm 1 takes the rewards first. The filter
 * is off: verl draws four times as many prompts for it. */
static inline PrimeOptions prime_options(void) {
    return (PrimeOptions){.learning_rate = 1e-6, .loss = implicit_prm_config(), .lower = 0.2, .upper = 0.8};
}

// clang-format off
#define PRIME_OPTIONS(o)                                                                                               \
    OPTION_GROUP("PRIME"),                                                                                             \
    OPTION_TEXT  ("prm",                  0, &(o).prm,           "FILE",                                               \
                  "language model that the process reward model (PRM) starts from; the model of -c if not given"),     \
    OPTION_TEXT  ("prm-output",           0, &(o).output,        "FILE", "output file of the PRM"),                    \
    OPTION_REAL  ("prm-learning-rate",    0, &(o).learning_rate, 0, 10,                                                \
                  "peak learning rate of the PRM; 0 uses --learning-rate"),                                            \
    OPTION_INT   ("prm-warmup",           0, &(o).warmup,        0, 1e9,                                               \
                  "number of initial optimizer steps that train only the PRM"),                                        \
    OPTION_CHOICE("prm-update",           0, &(o).update,        PRIME_UPDATE_CHOICES,                                 \
                  "train the PRM on a generation after or before it gives the rewards of its tokens; before takes one " \
                  "more forward pass"),                                                                                \
    OPTION_REAL  ("beta-train",           0, &(o).loss.beta,     0, 1e6,                                               \
                  "beta of the implicit reward, beta log(PRM / reference)"),                                           \
    OPTION_CHOICE("prime-granularity",    0, &(o).loss.granularity, PRM_GRANULARITY_CHOICES,                           \
                  "what has a process reward: every token, or the completion at its last token"),                     \
    OPTION_CHOICE("prime-norm",           0, &(o).loss.norm,     PRM_NORM_CHOICES,                                     \
                  "batch_norm divides process rewards by the largest sum of those from a token on"),                  \
    OPTION_REAL  ("reward-dpo-coef",      0, &(o).loss.dpo_coef, 0, 1e6, "weight of the process rewards' returns"),    \
    OPTION_REAL  ("reward-gt-coef",       0, &(o).loss.gt_coef,  0, 1e6, "weight of the outcome's return"),            \
    OPTION_FLAG  ("filter-accuracy",      0, &(o).filter,                                                              \
                  "learn only from prompts whose mean outcome is within the following bounds"),                        \
    OPTION_REAL  ("accuracy-lower-bound", 0, &(o).lower,         0, 1, "lowest mean outcome of --filter-accuracy"),    \
    OPTION_REAL  ("accuracy-upper-bound", 0, &(o).upper,         0, 1, "highest mean outcome of --filter-accuracy")
// clang-format on

/* Rejects options without effect, and bounds that no prompt can meet. prime: the algorithm is PRIME; table: all options. */
static inline void prime_check(const PrimeOptions *o, const Option *table, bool prime) {
    const char *only = "used only by --algo prime";
    const bool filter = o->filter;
    const OptionUse use[] = {
        {&o->prm, prime, only},
        {&o->output, prime, only},
        {&o->learning_rate, prime, only},
        {&o->warmup, prime, only},
        {&o->update, prime, only},
        {&o->loss.beta, prime, only},
        {&o->loss.granularity, prime, only},
        {&o->loss.norm, prime, only},
        {&o->loss.dpo_coef, prime, only},
        {&o->loss.gt_coef, prime, only},
        {&o->filter, prime, only},
        {&o->lower, filter, "used only with --filter-accuracy"},
        {&o->upper, filter, "used only with --filter-accuracy"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    if (filter && o->lower > o->upper)
        usage_error("--accuracy-lower-bound: %g is above --accuracy-upper-bound, %g", o->lower, o->upper);
    if (prime && o->loss.dpo_coef == 0 && o->loss.gt_coef == 0)
        usage_error("--reward-dpo-coef and --reward-gt-coef are 0: there is nothing to learn");
}

typedef struct Prime {
    const PrimeOptions *o;
    Generation *g;
    SecondModel prm;
    ImplicitPrmConfig loss;
    float *logp, *reward; /* (tokens) of the PRM; process rewards */
    double *sum;          /* (completions) scratch */
    /* of the generation */
    double ce;                      /* mean cross-entropy over the steps that were made */
    int32_t steps;                  /* number of these */
    double kept;                    /* share of the prompts with outcomes that --filter-accuracy keeps */
    ImplicitPrmStats before, after; /* of the PRM before its steps, and of the rewards */
} Prime;

/* Opens the PRM. gamma: discount of later process rewards. Call it after trainer_open(). */
static inline void prime_open(Prime *p, const PrimeOptions *o, Generation *g, double gamma) {
    Error e;
    Trainer *t = g->t;
    const char *path = o->prm ? o->prm : t->o->checkpoint;
    *p = (Prime){.o = o, .g = g, .loss = o->loss};
    p->loss.gamma = gamma;
    if (!t->o->resume && (!path || !strcmp(path, "-")))
        usage_error("--prm: give the file of the model that the process reward model starts from; -c names none");
    const SecondModelOpen how = {.kind = "prm",
                                 .path = path,
                                 .own = !o->prm,
                                 .longest = generation_longest(g),
                                 .rows = g->rows,
                                 .learning_rate = o->learning_rate};
    if (second_model_open(&p->prm, t, &how) && !model_fits_policy(&p->prm.file, path, &e)) die("%s", e.text);
    second_model_check_output(&p->prm, o->output);
    p->logp = (float *)xcalloc(generation_tokens_max(g), sizeof *p->logp);
    p->reward = (float *)xcalloc(generation_tokens_max(g), sizeof *p->reward);
    p->sum = (double *)xcalloc((size_t)(g->o->prompts * g->o->generations), sizeof *p->sum);
}

/* ---- outcomes ---------------------------------------------------------------------------------------------------- */

/* Leaves out the prompts whose mean outcome is outside of the bounds. */
static inline void prime_filter(Prime *p, const float *outcome) {
    const Generation *g = p->g;
    const int32_t G = (int32_t)g->o->generations;
    double prompts = 0, kept = 0;
    for (int32_t first = 0; first < g->completions; first += G) {
        double sum = 0, n = 0;
        for (int32_t i = first; i < first + G; i++) {
            sum += g->counts[i] ? (double)outcome[i] : 0;
            n += g->counts[i];
        }
        const bool keep = n > 0 && sum / n >= p->o->lower && sum / n <= p->o->upper;
        for (int32_t i = first; i < first + G && !keep; i++) g->counts[i] = 0;
        prompts += n > 0;
        kept += keep;
    }
    p->kept = kept / prompts;
    if (prompts > 0 && kept == 0)
        metrics_warn(&g->t->metrics, "no prompt has a mean outcome from %g to %g: there is nothing to learn from",
                     p->o->lower, p->o->upper);
}

/* Checks the outcomes of a generation and applies --filter-accuracy to g->counts. outcome: (completions) of all ranks.
 * Collective. */
static inline void prime_outcomes(Prime *p, const float *outcome) {
    const Generation *g = p->g;
    Error e;
    bool ok = true;
    for (int32_t i = 0; ok && i < g->completions; i++)
        if (g->counts[i] && !(outcome[i] >= 0 && outcome[i] <= 1))
            ok =
                error_set(&e,
                          "--algo prime: a completion has the score %g, and an outcome is from 0 (wrong) to 1 (right); "
                          "change the weights of --reward or the penalties",
                          (double)outcome[i]);
    trainer_require(g->t, ok, &e);
    if (p->o->filter) prime_filter(p, outcome);
}

/* The whole generation under the PRM. */
static inline ImplicitPrmBatch prime_batch(const Prime *p, const float *outcome) {
    const Generation *g = p->g;
    return (ImplicitPrmBatch){g->completions, g->offset, outcome, g->counts, p->logp, g->ref_logp};
}

/* ---- training the PRM -------------------------------------------------------------------------------------------- */

/* One optimizer step of the PRM on completions [first, end), with the schedule's rate at `step`. Their log-probabilities before
 * it are written to p->logp. Collective. */
static inline void prime_step(Prime *p, const float *outcome, int32_t first, int32_t end, int64_t step) {
    Generation *g = p->g;
    Trainer *t = g->t;
    const float T = (float)g->o->temperature;
    double completions = 0, loss = 0;
    int32_t mine, last;
    for (int32_t i = first; i < end; i++) completions += g->counts[i];
    if (completions == 0) return;
    generation_mine(g, first, end, &mine, &last);
    const MicroPlan *plan = generation_plan(g, mine, last);
    for (int32_t m = 0; m < plan->micros; m++) {
        const GenerationSlice x = generation_pack(g, plan->first[m], plan->first[m + 1]);
        const ImplicitPrmBatch b = {x.count, x.offset, outcome + x.first, x.counts, p->logp + x.at, x.ref_logp};
        model_forward(&p->prm.model, &p->prm.work, &g->batch, T, &(ModelOutput){.logp = p->logp + x.at});
        loss += implicit_prm_loss(&p->loss, completions, &b, x.dlogp);
        model_backward(&p->prm.model, &p->prm.work, &g->batch, T, x.dlogp, NULL, NULL);
        trainer_count_flops(t, &p->prm.model, &g->batch, 3);
    }
    generation_complete(g, p->logp, first, end);
    loss = dist_total(&t->dist, loss);
    second_model_step(&p->prm, loss, step);
    p->ce += loss;
    p->steps++;
}

/* Trains the PRM on a generation and computes its process rewards. Call it after the reference's log-probabilities are
 * computed. outcome: (completions). Collective. */
static inline void prime_rewards(Prime *p, const float *outcome) {
    Generation *g = p->g;
    const int32_t size = g->completions / g->parts, G = (int32_t)g->o->generations;
    const ImplicitPrmBatch b = prime_batch(p, outcome);
    p->ce = 0;
    p->steps = 0;
    for (int32_t m = 0; m < g->parts; m++) prime_step(p, outcome, m * size, (m + 1) * size, g->t->step + m);
    p->ce /= p->steps;
    implicit_prm_rewards(&p->loss, &b, p->reward);
    p->before = p->after = implicit_prm_stats(&b, p->reward, G, p->sum);
    if (p->o->update == PRIME_AFTER) return;
    generation_forward(g, &p->prm.model, &p->prm.work, 0, g->completions, &(ModelOutput){.logp = p->logp});
    implicit_prm_rewards(&p->loss, &b, p->reward);
    p->after = implicit_prm_stats(&b, p->reward, G, p->sum);
}

/* Writes the advantages of a generation, before they are whitened: (tokens). */
static inline void prime_advantages(const Prime *p, const float *outcome, float *advantage) {
    const ImplicitPrmBatch b = prime_batch(p, outcome);
    implicit_prm_advantages(&p->loss, &b, p->reward, (int32_t)p->g->o->generations, advantage);
}

/* ---- the end of a generation, of a run --------------------------------------------------------------------------- */

/* Logs the generation under verl's names. */
static inline void prime_log(const Prime *p) {
    Metrics *to = &p->g->t->metrics;
    metrics_set(to, "reward_model/dpo_loss", p->ce);
    metrics_set(to, "reward_model/dpo_acc_before", p->before.dpo_acc);
    metrics_set(to, "reward_model/dpo_acc_abs_before", p->before.dpo_acc_abs);
    if (p->o->update == PRIME_BEFORE) {
        metrics_set(to, "reward_model/dpo_acc", p->after.dpo_acc);
        metrics_set(to, "reward_model/dpo_acc_abs", p->after.dpo_acc_abs);
    }
    metrics_set(to, "reward_model/reward", p->after.reward);
    metrics_set(to, "reward_model/raw_reward", p->after.raw_reward);
    if (p->steps) metrics_set(to, "reward_model/grad_norm", p->prm.update.grad_norm);
    if (p->o->filter) metrics_set(to, "filter_accuracy/kept", p->kept);
}

/* Writes the PRM to --prm-output. */
static inline void prime_write(Prime *p) { second_model_write(&p->prm, p->o->output); }

static inline void prime_close(Prime *p) {
    second_model_close(&p->prm);
    free(p->logp), free(p->reward), free(p->sum);
    *p = (Prime){0};
}

#endif
