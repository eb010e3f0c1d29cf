/* credit.h - credit of the turns of trajectories: advantages of turns (train_grpo), LLDS, and the cross-entropy of
 * observations.
 *
 * Completions without tools have a single turn, to which all of this applies, too.
 *
 *     Credit c;
 *     const CreditOptions how = credit_defaults();
 *     credit_open(&c, &how, &g);                                             // after generation_open()
 *     credit_advantages(&c, &g, SCALE_GROUP, NULL, advantage);               // after advantage_group(), for each generation
 *     credit_begin(&c, &g, 0, g.completions);                                // for each optimizer step
 *     const GenerationSlice x = generation_pack(&g, 0, 4);                   // for each micro-batch
 *     credit_forward(&c, &g, &x, &model, &work, temperature, NULL);
 *     credit_give(&c, &x, &b, NULL);
 *     loss += credit_llds(&c, &x, &b, N);                                    // after policy_loss()
 *     loss += credit_backward(&c, &g, &x, &model, &work, temperature, NULL, NULL);
 *     credit_log(&c, &g);                                                    // for each optimizer step
 *     credit_close(&c);
 */
#ifndef LLMC_TRAIN_CREDIT_H
#define LLMC_TRAIN_CREDIT_H

#include "../base/error.h"           /* xcalloc, usage_error */
#include "../base/options.h"         /* OPTION_REAL, OPTION_CHOICE, Option, OptionUse, ... */
#include "../dist/dist.h"            /* dist_sum, DIST_FIELDS */
#include "../loss/advantage.h"       /* AdvantageStats, ScaleRewards, advantage_group, advantage_group_differs */
#include "../loss/advantage_turns.h" /* CREDIT_GIGPO, CREDIT_TURN, ADVANTAGE_LEVELS, AdvantageLevel, ... */
#include "../loss/llds.h"            /* LldsStats, llds_loss */
#include "../loss/policy.h"          /* PolicyBatch */
#include "../model/micro_plan.h"     /* MicroPlan */
#include "../model/model.h"          /* Model */
#include "../model/transformer.h"    /* ModelOutput, model_forward, model_backward */
#include "../model/workspace.h"      /* Workspace */
#include "../report/metrics.h"       /* metrics_set, Metrics */
#include "../rollout/episodes.h"     /* EpisodeOptions, episodes_on */
#include "../rollout/rollout.h"      /* Completion, completion_drawn, completion_before, completion_mask */
#include "../rollout/trajectory.h"   /* Trajectory */
#include "generation.h"              /* Generation, GenerationSlice, generation_cached, generation_cached_work, ... */
#include "trainer.h"                 /* trainer_count_flops */

typedef struct CreditOptions {
    int level, norm; /* an AdvantageLevel; of gigpo: 0 std, 1 none */
    double turn_weight, gamma, gigpo_weight, llds, observation;
} CreditOptions;

static inline CreditOptions credit_defaults(void) {
    return (CreditOptions){.turn_weight = 0.5, .gamma = 1, .gigpo_weight = 1};
}

// clang-format off
#define CREDIT_ADVANTAGE_OPTIONS(o)                                                                                    \
    OPTION_CHOICE("advantage-level",  0, &(o).level,        ADVANTAGE_LEVELS,                                          \
                  "what has an advantage of its own: completions, or their turns, as in MT-GRPO, by returns, or as in GiGPO"), \
    OPTION_REAL  ("turn-weight",      0, &(o).turn_weight,  0, 1e6,                                                    \
                  "turn: weight of the rewards of turns beside that of the whole completion"),                         \
    OPTION_REAL  ("turn-gamma",       0, &(o).gamma,        0, 1, "return, gigpo: discount per turn of later rewards"), \
    OPTION_REAL  ("gigpo-weight",     0, &(o).gigpo_weight, 0, 1e6,                                                    \
                  "gigpo: weight of the comparison of turns that follow the same state"),                              \
    OPTION_CHOICE("gigpo-norm",       0, &(o).norm,         "std|none",                                                \
                  "gigpo: what both comparisons are divided by")

#define CREDIT_LOSS_OPTIONS(o)                                                                                         \
    OPTION_REAL("llds-coef",      0, &(o).llds,        0, 1e6,                                                         \
                "LLDS: weight of keeping the likelihood of turns with A >= 0 from falling"),                           \
    OPTION_REAL("observation-ce", 0, &(o).observation, 0, 1e6,                                                         \
                "weight of the cross-entropy of observed tokens, a mean over them alone")
// clang-format on

/* Rejects options without effect, and --state-masking false with what it contradicts. several: a generation has several
 * optimizer steps. */
static inline void credit_check(const CreditOptions *o, const Option *table, const EpisodeOptions *episodes,
                                bool several) {
    const bool gigpo = o->level == CREDIT_GIGPO, tools = episodes_on(episodes);
    const OptionUse use[] = {
        {&o->level, tools, "used only with --tools or --tool-cmd"},
        {&o->turn_weight, o->level == CREDIT_TURN, "used only by --advantage-level turn"},
        {&o->gamma, gigpo || o->level == CREDIT_RETURN, "used only by --advantage-level return and gigpo"},
        {&o->gigpo_weight, gigpo, "used only by --advantage-level gigpo"},
        {&o->norm, gigpo, "used only by --advantage-level gigpo"},
        {&o->llds, several,
         "the likelihood has not changed in the only step of a generation; give --num-iterations or "
         "--steps-per-generation"},
        {&o->observation, tools, "used only with --tools or --tool-cmd"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    if (episodes->unmasked && o->observation > 0)
        usage_error("--observation-ce: with --state-masking false the observed tokens are in the policy loss already");
    if (episodes->unmasked && episodes->mask_errors)
        usage_error(
            "--mask-error-turns: makes drawn tokens context, and with --state-masking false there is no context");
}

typedef struct Credit {
    const CreditOptions *o;
    int32_t *turn;                      /* (tokens) turn of each drawn token, within its completion */
    float *addition;                    /* (tokens) to the advantage of the completion; NULL: there is none */
    float *advantage;                   /* (tokens) with it */
    double state_size;                  /* gigpo: mean number of turns that follow a state */
    LldsStats llds;                     /* of the step */
    double observations, observed_loss; /* of the step: tokens of all ranks; sum in nats */
    float *logp, *entropy, *dlogp, *dentropy, *value, *dvalue, *now; /* (rows) of a micro-batch */
} Credit;

static inline bool credit_levels(const Credit *c) { return c->addition != NULL; }

static inline void credit_open(Credit *c, const CreditOptions *o, Generation *g) {
    const size_t tokens = generation_tokens_max(g), rows = (size_t)g->rows;
    *c = (Credit){.o = o, .state_size = NAN};
    c->turn = (int32_t *)xcalloc(tokens, sizeof *c->turn);
    g->observe = o->observation > 0;
    if (o->level) {
        c->addition = (float *)xcalloc(tokens, sizeof *c->addition);
        c->advantage = (float *)xcalloc(tokens, sizeof *c->advantage);
    }
    c->now = (float *)xcalloc(rows, sizeof *c->now);
    if (!g->observe) return;
    float **const arrays[] = {&c->logp, &c->entropy, &c->dlogp, &c->dentropy, &c->value, &c->dvalue};
    for (int i = 0; i < 6; i++) *arrays[i] = (float *)xcalloc(rows, sizeof **arrays[i]);
}

static inline void credit_close(Credit *c) {
    free(c->turn), free(c->addition), free(c->advantage), free(c->now);
    free(c->logp), free(c->entropy), free(c->dlogp), free(c->dentropy), free(c->value), free(c->dvalue);
    *c = (Credit){0};
}

/* ---- advantages ------------------------------------------------------------------------------------------------- */

/* Whether the rewards of the turns of a group differ, at any turn. */
static inline bool credit_group_differs(const Credit *c, const Generation *g, int32_t group) {
    const int32_t G = (int32_t)g->o->generations;
    float reward[G];
    bool differs = false, more = credit_levels(c);
    for (int32_t k = 0; more && !differs; k++) {
        more = false;
        for (int32_t i = 0; i < G; i++) {
            const Trajectory *y = g->scored[group * G + i].completion.trajectory;
            reward[i] = y && k < y->turns ? y->turn_reward[k] : NAN;
            more = more || (y && k < y->turns);
        }
        differs = advantage_group_differs(reward, G);
    }
    return differs;
}

/* Sets the turn of every drawn token. */
static inline void credit_turns(Credit *c, const Generation *g) {
    for (int32_t i = 0; i < g->completions; i++) {
        const Completion *x = &g->scored[i].completion;
        const uint8_t *drawn = completion_mask(x);
        int32_t turn = 0;
        for (int32_t k = 0, at = g->offset[i]; k < x->count; k++) {
            while (x->trajectory && turn + 1 < x->trajectory->turns && x->trajectory->start[turn + 1] <= k) turn++;
            if (!drawn || drawn[k]) c->turn[at++] = turn;
        }
    }
}

/* Sets the turns of the generation's tokens and, if turns have advantages of their own, the additions to `advantage`:
 * (completions), that of advantage_group(). penalty: (completions) subtracted from the rewards, or NULL. */
static inline void credit_advantages(Credit *c, const Generation *g, ScaleRewards scale, const float *penalty,
                                     float *advantage) {
    const int32_t n = g->completions, G = (int32_t)g->o->generations;
    int32_t *turn = (int32_t *)xcalloc((size_t)n + 1, sizeof *turn);
    credit_turns(c, g);
    for (int32_t i = 0; i < n; i++) {
        const Trajectory *y = g->scored[i].completion.trajectory;
        turn[i + 1] = turn[i] + (y ? y->turns : 1);
    }
    if (credit_levels(c)) {
        const size_t turns = (size_t)turn[n];
        float *reward = (float *)xcalloc(turns, sizeof *reward), *addition = (float *)xcalloc(turns, sizeof *addition),
              *outcome = (float *)xcalloc((size_t)n, sizeof *outcome);
        uint64_t *state = (uint64_t *)xcalloc(turns, sizeof *state);
        for (int32_t i = 0; i < n; i++) {
            const Trajectory *y = g->scored[i].completion.trajectory;
            outcome[i] = isnan(g->reward[i]) ? NAN : generation_outcome(g, i) - (penalty ? penalty[i] : 0);
            memcpy(reward + turn[i], y->turn_reward, (size_t)y->turns * sizeof *reward);
            memcpy(state + turn[i], y->state, (size_t)y->turns * sizeof *state);
        }
        AdvantageStats unused;
        const TurnRewards t = {turn, reward, state, outcome, g->reward};
        const TurnCredit how = {(AdvantageLevel)c->o->level, scale, c->o->turn_weight, c->o->gamma, c->o->gigpo_weight};
        if (how.level == CREDIT_TURN) advantage_group(outcome, n / G, G, scale, advantage, &unused);
        c->state_size = advantage_turns(&how, &t, n / G, G, advantage, addition);
        for (int32_t i = 0; i < n; i++)
            for (int32_t k = g->offset[i]; k < g->offset[i + 1]; k++) {
                c->addition[k] = addition[turn[i] + c->turn[k]];
                c->advantage[k] = advantage[i] + c->addition[k];
            }
        free(reward), free(addition), free(outcome), free(state);
    }
    free(turn);
}

/* Whether a token has an advantage. advantage: (completions) */
static inline bool credit_any(const Credit *c, const Generation *g, const float *advantage) {
    for (int32_t i = 0; i < g->completions; i++)
        if (advantage[i] != 0) return true;
    for (int32_t t = 0; credit_levels(c) && t < g->offset[g->completions]; t++)
        if (c->addition[t] != 0) return true;
    return false;
}

/* Gives the tokens of a micro-batch their additions. own: (tokens of the micro-batch) additions of another method, to which
 * they are added if b->token_advantage is set. */
static inline void credit_give(const Credit *c, const GenerationSlice *x, PolicyBatch *b, float *own) {
    if (!credit_levels(c)) return;
    if (!b->token_advantage) b->token_advantage = c->addition + x->at;
    else
        for (int32_t t = 0; t < x->offset[x->count]; t++) own[t] += c->addition[x->at + t];
}

/* ---- the step ---------------------------------------------------------------------------------------------------- */

/* Begins an optimizer step on completions [first, end): counts the observed tokens that are in the loss. */
static inline void credit_begin(Credit *c, const Generation *g, int32_t first, int32_t end) {
    c->llds = (LldsStats){0};
    c->observations = c->observed_loss = 0;
    for (int32_t i = first; i < end; i++) {
        const Completion *x = &g->scored[i].completion;
        if (g->counts[i]) c->observations += x->count - completion_drawn(x) - completion_before(x);
    }
}

/* The forward pass of a micro-batch. With --observation-ce, the observed tokens are targets after the drawn ones. value: of
 * the drawn tokens, written; or NULL. */
static inline void credit_forward(Credit *c, Generation *g, const GenerationSlice *x, const Model *m,
                                  const Workspace *w, float temperature, float *value) {
    const size_t drawn = (size_t)x->offset[x->count] * sizeof(float);
    ModelOutput out = {.logp = x->logp, .entropy = x->entropy, .value = value};
    if (g->observe) {
        generation_observe(g, x->first, x->first + x->count);
        out = (ModelOutput){.logp = c->logp, .entropy = c->entropy, .value = value ? c->value : NULL};
    }
    if (generation_cached(g, m, x->first, x->first + x->count)) {
        const Workspace cached = generation_cached_work(g, w, x->first, x->first + x->count);
        model_forward(m, &cached, &g->batch, temperature, &out);
        memcpy(x->logp, x->sampler_logp, drawn); /* equal up to the order of the head's sums */
        return;
    }
    model_forward(m, w, &g->batch, temperature, &out);
    if (!g->observe) return;
    memcpy(x->logp, c->logp, drawn);
    memcpy(x->entropy, c->entropy, drawn);
    if (value) memcpy(value, c->value, drawn);
}

/* LLDS: adds its gradient to x->dlogp. Returns its part of the loss. tokens: of the step that count. */
static inline double credit_llds(Credit *c, const GenerationSlice *x, const PolicyBatch *b, double tokens) {
    return c->o->llds > 0 ? llds_loss(c->o->llds, tokens, b, c->turn + x->at, x->dlogp, &c->llds) : 0;
}

/* The gradients of values for all targets of a micro-batch: those of the drawn tokens, and 0 for the observed ones. */
static inline const float *credit_dvalue(Credit *c, const Generation *g, const GenerationSlice *x,
                                         const float *dvalue) {
    const int32_t drawn = x->offset[x->count];
    if (!dvalue || g->batch.targets == drawn) return dvalue;
    memcpy(c->dvalue, dvalue, (size_t)drawn * sizeof *dvalue);
    memset(c->dvalue + drawn, 0, (size_t)(g->batch.targets - drawn) * sizeof *dvalue);
    return c->dvalue;
}

/* The backward pass of a micro-batch. dentropy, dvalue: of the drawn tokens, or NULL. Returns the cross-entropy's part of the
 * loss. */
static inline double credit_backward(Credit *c, Generation *g, const GenerationSlice *x, const Model *m,
                                     const Workspace *w, float temperature, const float *dentropy,
                                     const float *dvalue) {
    const int32_t drawn = x->offset[x->count];
    const double weight = c->o->observation / fmax(c->observations, 1);
    double sum = 0;
    if (!g->observe) {
        const bool cached = generation_cached(g, m, x->first, x->first + x->count);
        const Workspace work = cached ? generation_cached_work(g, w, x->first, x->first + x->count) : *w;
        model_backward(m, &work, &g->batch, temperature, x->dlogp, dentropy, dvalue);
        return 0;
    }
    memcpy(c->dlogp, x->dlogp, (size_t)drawn * sizeof *c->dlogp);
    memset(c->dentropy, 0, (size_t)g->batch.targets * sizeof *c->dentropy);
    if (dentropy) memcpy(c->dentropy, dentropy, (size_t)drawn * sizeof *dentropy);
    for (int32_t i = 0, t = drawn; i < x->count; i++) {
        const Completion *y = &g->scored[x->first + i].completion;
        for (const int32_t end = t + y->count - completion_drawn(y); t < end; t++) {
            c->dlogp[t] = x->counts[i] ? (float)-weight : 0;
            if (x->counts[i]) sum -= c->logp[t];
        }
    }
    model_backward(m, w, &g->batch, temperature, c->dlogp, dentropy ? c->dentropy : NULL,
                   credit_dvalue(c, g, x, dvalue));
    c->observed_loss += sum;
    return weight * sum;
}

/* Logs the step. Collective. */
static inline void credit_log(Credit *c, Generation *g) {
    Metrics *m = &g->t->metrics;
    if (c->o->llds > 0) {
        dist_sum(&g->t->dist, DIST_FIELDS(c->llds));
        metrics_set(m, "llds/loss", c->llds.loss);
        metrics_set(m, "llds/active", c->llds.active / fmax(c->llds.turns, 1));
    }
    if (g->observe) {
        dist_sum(&g->t->dist, &c->observed_loss, 1);
        metrics_set(m, "observation_ce", c->observed_loss / c->observations);
    }
    if (c->o->level == CREDIT_GIGPO) metrics_set(m, "gigpo/state_size", c->state_size);
}

/* Sets the metric llds/right: the mean change, since before: (tokens), of the log-probabilities of the tokens of
 * completions with a positive advantage. Collective. */
static inline void credit_log_right(Credit *c, Generation *g, const Model *m, const Workspace *w, const float *before,
                                    const float *advantage) {
    const int32_t size = g->completions / g->parts;
    double sum[2] = {0}; /* change, tokens */
    for (int32_t part = 0, mine, last; part < g->completions; part += size) {
        generation_mine(g, part, part + size, &mine, &last);
        const MicroPlan *plan = generation_plan(g, mine, last);
        for (int32_t k = 0; k < plan->micros; k++) {
            const GenerationSlice x = generation_pack(g, plan->first[k], plan->first[k + 1]);
            model_forward(m, w, &g->batch, (float)g->o->temperature, &(ModelOutput){.logp = c->now});
            trainer_count_flops(g->t, m, &g->batch, 1);
            for (int32_t i = 0; i < x.count; i++)
                for (int32_t t = x.offset[i]; t < x.offset[i + 1] && x.counts[i] && advantage[x.first + i] > 0; t++) {
                    sum[0] += (double)c->now[t] - before[x.at + t];
                    sum[1]++;
                }
        }
    }
    dist_sum(&g->t->dist, sum, 2);
    metrics_set(&g->t->metrics, "llds/right", sum[0] / sum[1]);
}

#endif
