/* online_pairs.h - preference pairs sampled during training, scored by a reward model or verifiers.
 *
 *   online_dpo   both from the policy                                       OAIF: Guo et al. 2024 (2402.04792)
 *   xpo          one from the policy, one from the reference                Xie et al. 2024 (2405.21046)
 *   nash_md      one from the policy, one from the geometric mixture of     Munos et al. 2023 (2312.00886)
 *                policy and reference (mixture.h)
 *
 * Owns the prompts, the sampling engines, the reward model and the completions of one step (generation.h has the
 * policy's part). The score of a completion is the reward model's score plus the verifiers' reward, minus
 * missing_eos_penalty if the completion was truncated. A pair is left out if one of its completions could not be
 * scored. Errors end the program (see trainer.h).
 *
 *     OnlinePairs p = {.kind = ONLINE_DPO, .reward_model = "rm.bin"};
 *     online_open_data(&p, &options, &trainer, seed);
 *     trainer_open(&trainer, "train_dpo", &trainer_options, &p.g.train.shard, false);
 *     online_open_prompts(&p);
 *     trainer_announce(&trainer, table, rows, online_bytes(&p));
 *     online_open(&p, &reference.model);
 *     for (...) {
 *         online_draw(&p);
 *         for (int32_t i = 0; i < p.count; i++) use(online_answer(&p, i, 0), online_answer(&p, i, 1));
 *         online_forget(&p);
 *     }
 */
#ifndef LLMC_TRAIN_ONLINE_PAIRS_H
#define LLMC_TRAIN_ONLINE_PAIRS_H

#include "generation.h"
#include "../rollout/mixture.h"
#include "../reward/reward_model.h"

#define ONLINE_CHOICES "online_dpo|xpo|nash_md"
typedef enum { ONLINE_DPO, ONLINE_XPO, ONLINE_NASH_MD } OnlineKind; /* in the order of ONLINE_CHOICES */

typedef struct OnlinePairs {
    OnlineKind kind;
    Generation g;   /* the policy's completions: two per prompt for online_dpo, else one */
    Answer *second; /* (prompts) completions of the other model; not for online_dpo */
    Rollout other;
    Mixture mixture;
    const char *reward_model; /* path, or NULL */
    RewardModel judge;
    double missing_eos_penalty, mixture_coef;
    int32_t count; /* prompts of this step */
} OnlinePairs;

static inline Answer *online_answer(const OnlinePairs *p, int32_t i, int k) {
    if (p->kind == ONLINE_DPO) return &p->g.answer[2 * i + k];
    return k ? &p->second[i] : &p->g.answer[i];
}

/* Opens the verifiers and the training shard. Call it before trainer_open(). */
static inline void online_open_data(OnlinePairs *p, GenerationOptions *o, Trainer *t, uint64_t seed) {
    o->generations = p->kind == ONLINE_DPO ? 2 : 1;
    generation_open_data(&p->g, o, t, seed, o->reward != NULL || o->reward_cmd != NULL);
}

/* Memory of the sampling engines in bytes, for trainer_announce(). The reward model is open by then. */
static inline size_t online_bytes(const OnlinePairs *p) {
    const Generation *g = &p->g;
    const ModelConfig *c = &g->t->model.config;
    const int prompt = generation_longest_prompt(g), most = (int)g->o->max_completion, slots = (int)g->o->slots;
    size_t bytes = generation_bytes(g);
    if (p->kind != ONLINE_DPO) bytes += rollout_bytes(c, g->t->backend, slots, prompt, most);
    if (p->kind == ONLINE_NASH_MD) bytes += mixture_bytes(c, c, g->t->backend, slots, prompt, most);
    return bytes;
}

/* Reads the prompts and opens the reward model. Call it after trainer_open(). */
static inline void online_open_prompts(OnlinePairs *p) {
    Error e;
    Trainer *t = p->g.t;
    generation_open_prompts(&p->g);
    if (!p->reward_model) return;
    if (!reward_model_open(&p->judge, p->reward_model, t->backend, t->device, (int)t->o->micro_tokens, &e) ||
        !reward_model_check(&p->judge, t->model.config.vocab, t->file.tokenizer, t->file.tokenizer_bytes, "the model",
                            &e))
        die("%s", e.text);
    const int need = generation_longest_prompt(&p->g) + (int)p->g.o->max_completion;
    if (!model_fits_length(&p->judge.model.config, p->reward_model, need, &e)) die("%s", e.text);
}

/* Opens the sampling engines. Call it after trainer_announce(). reference: the other model of xpo and nash_md. */
static inline void online_open(OnlinePairs *p, const Model *reference) {
    Error e;
    Generation *g = &p->g;
    const int prompt = generation_longest_prompt(g), most = (int)g->o->max_completion;
    generation_open(g);
    if (p->kind == ONLINE_DPO) return;
    if (reference->config.context < g->t->model.config.context)
        die("the reference's context of %d is shorter than the model's %d", reference->config.context,
            g->t->model.config.context);
    p->second = (Answer *)xcalloc((size_t)g->o->prompts, sizeof *p->second);
    const Model *from = p->kind == ONLINE_XPO ? reference : &g->t->model;
    if (!rollout_new(&p->other, from, (int)g->o->slots, prompt, most, &e) ||
        (p->kind == ONLINE_NASH_MD && !mixture_new(&p->mixture, &p->other, reference, p->mixture_coef, &e)))
        die("%s; lower --slots", e.text);
}

/* Samples one completion of each prompt of this step from the other model. */
static inline void online_draw_second(OnlinePairs *p) {
    Error e;
    Generation *g = &p->g;
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)p->count, sizeof *q);
    if (p->kind == ONLINE_NASH_MD) mixture_refresh(&p->mixture);
    for (int32_t i = 0; i < p->count; i++) {
        const int64_t prompt = g->answer[i].prompt;
        p->second[i] = (Answer){.prompt = prompt, .id = g->next_id++};
        q[i] = (RolloutRequest){.prompt = prompts_tokens(&g->train, prompt),
                                .prompt_len = prompts_length(&g->train, prompt),
                                .samples = 1,
                                .id = p->second[i].id,
                                .out = &p->second[i].completion};
    }
    if (!rollout_run(&p->other, &g->sampling, q, p->count, NULL, NULL, &e)) die("%s: %s", g->o->input, e.text);
    free(q);
}

/* Adds the reward model's scores and subtracts the penalty. */
static inline void online_judge(OnlinePairs *p, Answer *answer, int32_t n) {
    Error e;
    const Prompts *prompts = &p->g.train;
    RewardItem *item = (RewardItem *)xcalloc((size_t)n, sizeof *item);
    float *score = (float *)xcalloc((size_t)n, sizeof *score);
    for (int32_t i = 0; i < n; i++)
        item[i] = (RewardItem){.prompt = prompts_tokens(prompts, answer[i].prompt),
                               .prompt_len = prompts_length(prompts, answer[i].prompt),
                               .completion = answer[i].completion.tokens,
                               .completion_len = answer[i].completion.count};
    if (p->reward_model && !reward_model_score(&p->judge, item, n, score, &e)) die("%s", e.text);
    for (int32_t i = 0; i < n; i++) {
        answer[i].reward += score[i];
        if (!answer[i].completion.finished) answer[i].reward -= (float)p->missing_eos_penalty;
    }
    free(item), free(score);
}

/* Samples and scores two completions of each prompt of a step. */
static inline void online_draw(OnlinePairs *p) {
    Generation *g = &p->g;
    const double start = program_seconds();
    p->count = (int32_t)g->o->prompts;
    generation_sample(g, 0, p->count);
    if (p->kind != ONLINE_DPO) online_draw_second(p);
    const double judging = program_seconds();
    generation_score(g, 0, p->count);
    online_judge(p, g->answer, g->answers);
    if (p->kind != ONLINE_DPO) {
        generation_score_answers(g, p->second, p->count);
        online_judge(p, p->second, p->count);
    }
    g->gen_seconds = judging - start;
    g->reward_seconds = program_seconds() - judging;
}

/* Frees the completions of the step. */
static inline void online_forget(OnlinePairs *p) {
    if (p->second) {
        for (int32_t i = 0; i < p->count; i++) {
            completion_free(&p->second[i].completion);
            free(p->second[i].text);
            p->second[i] = (Answer){0};
        }
    }
    generation_forget(&p->g, 0);
}

/* Means over a step, for the metrics. */
typedef struct OnlineSummary {
    double score, margin; /* score of all completions; higher minus lower score of each pair */
    double ended, length; /* fraction with a stop token; tokens */
    int32_t pairs, ties;  /* pairs with two scores; those with equal scores */
} OnlineSummary;

static inline OnlineSummary online_summary(const OnlinePairs *p) {
    OnlineSummary s = {0};
    for (int32_t i = 0; i < p->count; i++) {
        const Answer *a = online_answer(p, i, 0), *b = online_answer(p, i, 1);
        s.ended += a->completion.finished + b->completion.finished;
        s.length += a->completion.count + b->completion.count;
        if (isnan(a->reward) || isnan(b->reward)) continue;
        s.pairs++;
        s.ties += a->reward == b->reward;
        s.score += a->reward + b->reward;
        s.margin += fabs((double)a->reward - b->reward);
    }
    s.ended /= 2 * p->count;
    s.length /= 2 * p->count;
    s.score /= 2 * fmax(s.pairs, 1);
    s.margin /= fmax(s.pairs, 1);
    return s;
}

static inline void online_close(OnlinePairs *p) {
    online_forget(p);
    if (p->reward_model) reward_model_close(&p->judge);
    mixture_free(&p->mixture);
    rollout_free(&p->other);
    free(p->second);
    generation_close(&p->g);
}

#endif
