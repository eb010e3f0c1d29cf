/* generation.h - sampling, scoring and logging shared by the trainers that learn from their own completions.
 *
 * A generation is P prompts with G completions each, sampled from the model in training and scored. The completions of
 * a prompt are adjacent and form a group. Tokens are stored flat, one completion after another: completion i has the
 * range [offset[i], offset[i+1]) of every per-token array. The completions of a group share one copy of their prompt,
 * in sampling and in training; micro-batches are split between completions.
 *
 * On several ranks (dist.h) each group is sampled, scored and trained on by a single rank. For sampling, prompts are
 * distributed over the ranks by their length. Once the lengths of the completions are known, the groups of each
 * mini-batch are distributed again for all that follows. After generation_sample(), generation_score() and
 * generation_forward() every rank holds every completion and its per-token values (all-gather), so advantages,
 * normalisers and metrics are computed locally and agree. Only the backward pass is limited to the rank's own
 * completions, generation_mine().
 *
 * Owns: the prompt shards, the order of the prompts, the sampling engine, the verifiers, the completions and their
 * arrays. The trainer owns the model, its workspace and the metrics. Errors end the program (see trainer.h). In the
 * order of use:
 *
 *     Generation g;
 *     generation_open_data(&g, &options, &trainer, seed, true);          // rewards and training shard
 *     trainer_open(&trainer, "train_grpo", &trainer_options, &g.train.shard, false);
 *     generation_open_prompts(&g);
 *     trainer_announce(&trainer, table, g.rows, generation_bytes(&g));
 *     generation_open(&g);
 *     for (...) {
 *         generation_sample(&g, 0, P);
 *         generation_score(&g, 0, P);                                    // r_i = sum_k w_k R_k(x, y_i)
 *         generation_flatten(&g, false);                                 // random order of the groups, flat arrays
 *         generation_forward(&g, &model, &work, 0, g.answers, &out);     // log-probabilities of all tokens
 *         for (int32_t i = 0, next; i < g.answers; i = next) {
 *             next = generation_pack(&g, i, g.answers);
 *             ...
 *         }
 *         generation_log(&g);
 *         generation_forget(&g, 0);
 *         generation_save(&g);
 *     }
 *     generation_close(&g);
 */
#ifndef LLMC_TRAIN_GENERATION_H
#define LLMC_TRAIN_GENERATION_H

#include "../loss/advantage.h"
#include "../records/cursor.h"
#include "../rollout/evaluation.h"
#include "generation_options.h"
#include "trainer.h"

/* One completion with its prompt and its rewards. */
typedef struct Answer {
    Completion completion;
    char *text;
    int64_t prompt; /* its index */
    uint64_t id;
    float reward, parts[REWARDS_MAX];
} Answer;

typedef struct Generation {
    const GenerationOptions *o; /* the command line */
    Trainer *t;
    Prompts train, val;
    Rewards rewards; /* empty if the trainer scores in another way */
    Rollout engine;
    Sampling sampling;
    Batch batch;      /* a micro-batch of completions */
    int rows;         /* its capacity */
    Cursor cursor;    /* position in the training prompts */
    uint64_t next_id; /* id of the next completion to be sampled */
    /* completions: P groups of G adjacent ones */
    int32_t answers;
    Answer *answer;
    float *reward;   /* (answers) */
    uint8_t *counts; /* (answers) 0: left out of the loss */
    int32_t *offset; /* (answers + 1) */
    float *logp, *old_logp, *ref_logp, *sampler_logp, *entropy, *dlogp, *dentropy; /* (tokens) */
    double gen_seconds, reward_seconds;
    /* ranks */
    int32_t parts;  /* mini-batches of a generation, each distributed over the ranks; 1 unless set */
    int64_t *cut;   /* (parts, ranks + 1) rank r has completions cut[r] ... cut[r+1]-1 of a part */
    int32_t *owner; /* (groups) the rank that samples it */
    double *cost;   /* (groups) tokens */
} Generation;

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* Opens the training shard and, if `verify`, the rewards of --reward and --reward-cmd. */
static inline void generation_open_data(Generation *g, const GenerationOptions *o, Trainer *t, uint64_t seed,
                                        bool verify) {
    Error e;
    *g = (Generation){.o = o, .t = t, .parts = 1};
    if (verify &&
        !rewards_open(&g->rewards, o->reward, o->reward_cmd, o->reward_timeout, seed, (int32_t)o->max_completion, &e))
        usage_error("%s", e.text);
    if (!shard_open(&g->train.shard, o->input, &e)) die("%s", e.text);
}

static inline int generation_longest_prompt(const Generation *g) {
    return g->train.longest > g->val.longest ? g->train.longest : g->val.longest;
}

/* Reads the prompts of both shards and sets the size of a micro-batch. Call it after trainer_open(). */
static inline void generation_open_prompts(Generation *g) {
    Error e;
    const GenerationOptions *o = g->o;
    const int32_t context = g->t->model.config.context;
    const int32_t limit = o->max_prompt < context - 1 ? (int32_t)o->max_prompt : context - 1;
    if (!prompts_read(&g->train, limit, &e)) die("%s", e.text);
    if (g->train.dropped)
        warn("%s: %lld prompts are longer than %d tokens and are left out", o->input, (long long)g->train.dropped,
             limit);
    if (o->val) {
        if (!shard_open(&g->val.shard, o->val, &e)) die("%s", e.text);
        trainer_check_shard(g->t, &g->val.shard);
        if (!prompts_read(&g->val, limit, &e)) die("%s", e.text);
    }
    if (g->t->text.stop < 0) warn("the model has no tokenizer: completions end at --max-completion-length only");
    const int need = generation_longest_prompt(g) + (int)o->max_completion;
    g->rows = g->t->o->micro_tokens > need ? (int)g->t->o->micro_tokens : need;
}

/* Size of the sampling engine in bytes, for trainer_announce(). */
static inline size_t generation_bytes(const Generation *g) {
    return rollout_bytes(&g->t->model.config, g->t->backend, (int)g->o->slots, generation_longest_prompt(g),
                         (int)g->o->max_completion);
}

static inline float **generation_token_arrays(Generation *g, int i) {
    float **const arrays[] = {&g->logp,    &g->old_logp, &g->ref_logp, &g->sampler_logp,
                              &g->entropy, &g->dlogp,    &g->dentropy};
    return i < (int)(sizeof arrays / sizeof *arrays) ? arrays[i] : NULL;
}

/* The maximum number of tokens of a generation. */
static inline size_t generation_tokens_max(const Generation *g) {
    return (size_t)(g->o->prompts * g->o->generations) * (size_t)g->o->max_completion;
}

/* Checks that a group of completions fits into the engine. Call it before trainer_announce(), to fail early. */
static inline void generation_check_group(const Generation *g) {
    const int64_t group = g->o->generations > g->o->eval_samples ? g->o->generations : g->o->eval_samples;
    const int slots = (int)g->o->slots, most = rollout_rows(slots, generation_longest_prompt(g)) - slots;
    if (group > most)
        die("--num-generations: %lld completions of one prompt, at most %d can be sampled at once", (long long)group,
            most);
}

/* Allocates the engine and the arrays, and continues from the counters of the trainer's state. */
static inline void generation_open(Generation *g) {
    Error e;
    const GenerationOptions *o = g->o;
    const json_t *s = g->t->state;
    const size_t n = (size_t)(o->prompts * o->generations), tokens = generation_tokens_max(g);
    if (!rollout_new(&g->engine, &g->t->model, (int)o->slots, generation_longest_prompt(g), (int)o->max_completion, &e))
        die("%s; lower --slots", e.text);
    g->batch = batch_new(g->rows, g->rows, g->rows);
    g->answer = (Answer *)xcalloc(n, sizeof *g->answer);
    g->reward = (float *)xcalloc(n, sizeof(float));
    g->counts = (uint8_t *)xcalloc(n, 1);
    g->offset = (int32_t *)xcalloc(n + 1, sizeof(int32_t));
    for (int i = 0; generation_token_arrays(g, i); i++)
        *generation_token_arrays(g, i) = (float *)xcalloc(tokens, sizeof(float));
    g->sampling = (Sampling){.temperature = (float)o->temperature,
                             .top_p = (float)o->top_p,
                             .min_p = (float)o->min_p,
                             .top_k = (int)o->top_k,
                             .repetition_penalty = (float)o->repetition_penalty,
                             .max_new = (int)o->max_completion,
                             .seed = (uint64_t)g->t->o->seed,
                             .stream = RANDOM_ROLLOUT};
    if (g->t->text.stop >= 0) g->sampling.stop[g->sampling.stops++] = g->t->text.stop;
    g->cut = (int64_t *)xcalloc((size_t)g->parts * (size_t)(g->t->dist.ranks + 1), sizeof *g->cut);
    g->owner = (int32_t *)xcalloc((size_t)o->prompts, sizeof *g->owner);
    g->cost = (double *)xcalloc((size_t)o->prompts, sizeof *g->cost);
    g->cursor = cursor_new(g->train.count, (uint64_t)g->t->o->seed);
    if (!cursor_resume(&g->cursor, s)) die("%s: the state was made with another --max-prompt-length", g->t->o->resume);
    g->next_id = (uint64_t)state_int(s, "next_id");
}

/* Stores the counters in the trainer's state. */
static inline void generation_save(Generation *g) {
    cursor_save(&g->cursor, g->t->state);
    json_object_set_new(g->t->state, "next_id", json_integer((json_int_t)g->next_id));
}

/* Frees the completions from `first` on. */
static inline void generation_forget(Generation *g, int32_t first) {
    for (int32_t i = first; i < g->answers; i++) {
        completion_free(&g->answer[i].completion);
        free(g->answer[i].text);
        g->answer[i] = (Answer){0};
    }
}

static inline void generation_close(Generation *g) {
    generation_forget(g, 0);
    for (int i = 0; generation_token_arrays(g, i); i++) free(*generation_token_arrays(g, i));
    free(g->answer), free(g->reward), free(g->counts), free(g->offset);
    free(g->cut), free(g->owner), free(g->cost);
    cursor_free(&g->cursor);
    rewards_close(&g->rewards);
    rollout_free(&g->engine);
    batch_free(&g->batch);
    prompts_close(&g->train);
    if (g->o->val) prompts_close(&g->val);
}

/* ---- sampling and scoring -------------------------------------------------------------------------------------- */

/* All-gather of the completions of n groups: sends those of this rank's groups and receives the others. Collective. */
static inline void generation_spread(Generation *g, Answer *answer, const int32_t *owner, int32_t n) {
    Dist *d = &g->t->dist;
    const int32_t G = (int32_t)g->o->generations;
    const size_t most = (size_t)g->o->max_completion;
    if (d->ranks == 1) return;
    int32_t *mine = (int32_t *)xmalloc((size_t)(n * G) * (2 + 2 * most) * sizeof *mine);
    int64_t at = 0, first[d->ranks + 1];
    for (int32_t i = 0; i < n * G; i++) { /* count, finished, tokens, log-probabilities */
        const Completion *c = &answer[i].completion;
        if (owner[i / G] != d->rank) continue;
        mine[at++] = c->count;
        mine[at++] = c->finished;
        memcpy(mine + at, c->tokens, (size_t)c->count * sizeof *mine);
        at += c->count;
        memcpy(mine + at, c->logp, (size_t)c->count * sizeof *mine);
        at += c->count;
    }
    int32_t *all = (int32_t *)dist_collect(d, mine, at, sizeof *mine, first);
    for (int32_t i = 0; i < n * G; i++) {
        Completion *c = &answer[i].completion;
        int64_t *next = &first[owner[i / G]];
        const int32_t *x = all + *next;
        const size_t bytes = (size_t)x[0] * sizeof *x;
        *next += 2 + 2 * (int64_t)x[0];
        if (owner[i / G] == d->rank) continue;
        *c = (Completion){(int32_t *)xmalloc(bytes), (float *)xmalloc(bytes), x[0], x[1] != 0};
        memcpy(c->tokens, x + 2, bytes);
        memcpy(c->logp, x + 2 + x[0], bytes);
    }
    free(all), free(mine);
}

/* Samples G completions of each of the next n prompts, into groups first ... first+n-1. Collective. */
static inline void generation_sample(Generation *g, int32_t first, int32_t n) {
    Error e;
    const int32_t G = (int32_t)g->o->generations;
    int32_t *owner = g->owner + first, own = 0;
    Answer *answer = g->answer + first * G;
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)n, sizeof *q);
    Completion *out = (Completion *)xcalloc((size_t)n * (size_t)G, sizeof *out);
    for (int32_t i = 0; i < n; i++) {
        const int64_t prompt = cursor_next(&g->cursor);
        for (int32_t k = 0; k < G; k++) answer[i * G + k] = (Answer){.prompt = prompt, .id = g->next_id++};
        g->cost[first + i] = prompts_length(&g->train, prompt) + (double)G * (double)g->o->max_completion;
    }
    dist_share(g->cost + first, n, g->t->dist.ranks, owner);
    for (int32_t i = 0; i < n; i++)
        if (owner[i] == g->t->dist.rank)
            q[own++] = (RolloutRequest){.prompt = prompts_tokens(&g->train, answer[i * G].prompt),
                                        .prompt_len = prompts_length(&g->train, answer[i * G].prompt),
                                        .samples = G,
                                        .id = answer[i * G].id,
                                        .out = out + i * G};
    if (!rollout_run(&g->engine, &g->sampling, q, own, NULL, NULL, &e)) die("%s: %s", g->o->input, e.text);
    for (int32_t i = 0; i < n * G; i++) answer[i].completion = out[i];
    generation_spread(g, answer, owner, n);
    g->answers = (first + n) * G;
    free(q), free(out);
}

/* Decodes completions [0, count) and computes their rewards, which are 0 if there are no verifiers. */
static inline void generation_score_answers(Generation *g, Answer *answer, int32_t count) {
    Error e;
    const size_t K = (size_t)g->rewards.count;
    RewardInput *in = (RewardInput *)xcalloc((size_t)count, sizeof *in);
    float *parts = (float *)xcalloc((size_t)count * (K + 1), sizeof *parts), *total = parts + (size_t)count * K;
    for (int32_t i = 0; i < count; i++) {
        const Completion *c = &answer[i].completion;
        answer[i].text = model_text_decode(&g->t->text, c->tokens, c->count, false);
        in[i] =
            prompts_input(&g->train, answer[i].prompt, answer[i].text, c, answer[i].id, (int32_t)g->o->max_completion);
    }
    if (K && !rewards_score(&g->rewards, in, count, parts, total, &e)) die("%s", e.text);
    for (int32_t i = 0; i < count; i++) {
        answer[i].reward = total[i];
        memcpy(answer[i].parts, parts + (size_t)i * K, K * sizeof *parts);
    }
    free(in), free(parts);
}

/* Scores groups first ... first+n-1, each on the rank that sampled it, followed by an all-gather. Collective. */
static inline void generation_score(Generation *g, int32_t first, int32_t n) {
    Dist *d = &g->t->dist;
    const int32_t G = (int32_t)g->o->generations;
    const size_t K = (size_t)g->rewards.count;
    Answer *answer = g->answer + first * G, *mine = (Answer *)xcalloc((size_t)(n * G), sizeof *mine);
    const int32_t *owner = g->owner + first;
    float *scores = (float *)xcalloc((size_t)(n * G) * (K + 1), sizeof *scores);
    int32_t own = 0;
    for (int32_t i = 0; i < n * G; i++)
        if (owner[i / G] == d->rank) mine[own++] = answer[i];
    generation_score_answers(g, mine, own);
    for (int32_t i = 0; i < own; i++) {
        scores[(size_t)i * (K + 1)] = mine[i].reward;
        memcpy(scores + (size_t)i * (K + 1) + 1, mine[i].parts, K * sizeof *scores);
    }
    int64_t next[d->ranks + 1];
    float *all = (float *)dist_collect(d, scores, own, (K + 1) * sizeof *scores, next);
    for (int32_t i = 0, k = 0; i < n * G; i++) {
        const float *x = all + (size_t)next[owner[i / G]]++ * (K + 1);
        const Completion *c = &answer[i].completion;
        answer[i].reward = x[0];
        memcpy(answer[i].parts, x + 1, K * sizeof *x);
        answer[i].text =
            owner[i / G] == d->rank ? mine[k++].text : model_text_decode(&g->t->text, c->tokens, c->count, false);
    }
    free(all), free(mine), free(scores);
}

static inline void generation_swap_groups(Generation *g, int32_t a, int32_t b) {
    const int32_t G = (int32_t)g->o->generations;
    for (int32_t k = 0; k < G; k++) {
        const Answer held = g->answer[a * G + k];
        g->answer[a * G + k] = g->answer[b * G + k];
        g->answer[b * G + k] = held;
    }
}

/* The number of tokens of a group in training. */
static inline double generation_group_tokens(const Generation *g, int32_t group) {
    const int32_t G = (int32_t)g->o->generations;
    double tokens = prompts_length(&g->train, g->answer[group * G].prompt);
    for (int32_t k = 0; k < G; k++) tokens += g->answer[group * G + k].completion.count;
    return tokens;
}

/* Distributes the n groups of a part, from `first` on, over the ranks by their tokens, and sorts them by rank. */
static inline void generation_arrange(Generation *g, int32_t first, int32_t n, int64_t *cut) {
    const int ranks = g->t->dist.ranks;
    const int32_t G = (int32_t)g->o->generations;
    int32_t at = first;
    for (int32_t i = 0; i < n; i++) g->cost[i] = generation_group_tokens(g, first + i);
    dist_share(g->cost, n, ranks, g->owner);
    for (int r = 0; r < ranks; r++) {
        cut[r] = (int64_t)at * G;
        for (int32_t i = at; i < first + n; i++) {
            if (g->owner[i - first] != r) continue;
            for (int32_t k = i; k > at; k--) { /* the others keep their order */
                generation_swap_groups(g, k, k - 1);
                const int32_t held = g->owner[k - first];
                g->owner[k - first] = g->owner[k - 1 - first];
                g->owner[k - 1 - first] = held;
            }
            at++;
        }
    }
    cut[ranks] = (int64_t)at * G;
}

/* Shuffles the groups, distributes each mini-batch over the ranks and fills in the flat arrays. mask_truncated:
 * truncated completions do not count in the loss. */
static inline void generation_flatten(Generation *g, bool mask_truncated) {
    const int32_t G = (int32_t)g->o->generations, P = g->answers / G;
    Random random = random_start((uint64_t)g->t->o->seed, RANDOM_SHUFFLE + (1ull << 48) + (uint64_t)g->t->step);
    for (int32_t i = P - 1; i > 0; i--) generation_swap_groups(g, i, (int32_t)random_below(&random, (uint64_t)i + 1));
    for (int32_t part = 0, n = P / g->parts; part < g->parts; part++)
        generation_arrange(g, part * n, n, g->cut + part * (g->t->dist.ranks + 1));
    g->offset[0] = 0;
    for (int32_t i = 0; i < g->answers; i++) {
        const Completion *c = &g->answer[i].completion;
        g->offset[i + 1] = g->offset[i] + c->count;
        g->counts[i] = c->finished || !mask_truncated;
        g->reward[i] = g->answer[i].reward;
        memcpy(g->sampler_logp + g->offset[i], c->logp, (size_t)c->count * sizeof(float));
    }
}

/* ---- micro-batches --------------------------------------------------------------------------------------------- */

/* Packs completions [first, end) into the batch, as many as fit; those of a group share one copy of their prompt.
 * Returns one past the last one packed. */
static inline int32_t generation_pack(Generation *g, int32_t first, int32_t end) {
    Batch *b = &g->batch;
    int64_t prompt = -1;
    int segment = -1;
    batch_clear(b);
    for (int32_t i = first; i < end; i++) {
        const Answer *a = &g->answer[i];
        const bool same = a->prompt == prompt && i % g->o->generations;
        const int32_t n = prompts_length(&g->train, a->prompt), count = a->completion.count;
        if (!batch_fits(b, count - 1 + (same ? 0 : n), count, 2)) return i;
        if (!same) segment = batch_segment(b, prompts_tokens(&g->train, a->prompt), n, 0, -1);
        prompt = a->prompt;
        batch_completion(b, segment, a->completion.tokens, count);
    }
    return end;
}

/* This rank's completions among [first, end), which must be within one part: [*mine, *last). */
static inline void generation_mine(const Generation *g, int32_t first, int32_t end, int32_t *mine, int32_t *last) {
    const int64_t *cut = g->cut + first / (g->answers / g->parts) * (g->t->dist.ranks + 1) + g->t->dist.rank;
    *mine = cut[0] > first ? (int32_t)cut[0] : first;
    *last = cut[1] < end ? (int32_t)cut[1] : end;
    if (*last < *mine) *last = *mine;
}

/* The number of micro-batches that completions [first, end) take. */
static inline int64_t generation_micros(Generation *g, int32_t first, int32_t end) {
    int64_t n = 0;
    for (; first < end; n++) first = generation_pack(g, first, end);
    return n;
}

static inline double generation_batch_flops(const Generation *g, const Model *m) {
    return model_flops(&m->config, g->batch.rows, g->batch.targets, batch_pairs(&g->batch));
}

/* All-gather of the per-token values of completions [first, end) of a part, 4 bytes each; each rank has filled in those
 * of its own completions. Collective. */
static inline void generation_complete(Generation *g, void *array, int32_t first, int32_t end) {
    const int ranks = g->t->dist.ranks;
    const int64_t *cut = g->cut + first / (g->answers / g->parts) * (ranks + 1);
    int64_t at[ranks + 1];
    for (int r = 0; r <= ranks; r++) {
        const int64_t answer = cut[r] < first ? first : cut[r] > end ? end : cut[r];
        at[r] = g->offset[answer];
    }
    if (array) dist_complete(&g->t->dist, array, at, 4);
}

/* Computes the outputs requested in `out` for all tokens of completions [first, end) under a model. The arrays of `out`
 * are flat, of the whole generation. Each rank computes its own completions, followed by an all-gather. Collective. */
static inline void generation_forward(Generation *g, const Model *m, const Workspace *w, int32_t first, int32_t end,
                                      const ModelOutput *out) {
    const int32_t size = g->answers / g->parts;
    for (int32_t part = first, mine, last; part < end; part = (part / size + 1) * size) {
        const int32_t part_end = (part / size + 1) * size < end ? (part / size + 1) * size : end;
        generation_mine(g, part, part_end, &mine, &last);
        for (int32_t i = mine, next; i < last; i = next) {
            next = generation_pack(g, i, last);
            const int32_t at = g->offset[i];
            const ModelOutput some = {.logp = out->logp ? out->logp + at : NULL,
                                      .entropy = out->entropy ? out->entropy + at : NULL,
                                      .argmax = out->argmax ? out->argmax + at : NULL,
                                      .value = out->value ? out->value + at : NULL};
            model_forward(m, w, &g->batch, (float)g->o->temperature, &some);
            g->t->flops += generation_batch_flops(g, m);
        }
        generation_complete(g, out->logp, part, part_end);
        generation_complete(g, out->entropy, part, part_end);
        generation_complete(g, out->argmax, part, part_end);
        generation_complete(g, out->value, part, part_end);
    }
}

/* ---- evaluation and logging ------------------------------------------------------------------------------------ */

/* Evaluates the model on held-out prompts; logs the results and prints a line. Collective. */
static inline Evaluation generation_evaluate(Generation *g, const char *when) {
    Error e;
    Evaluation v = {.samples = (int)g->o->eval_samples};
    Sampling how = g->sampling;
    how.stream = RANDOM_EVAL;
    const double start = program_seconds();
    const int64_t count = g->o->eval_prompts && g->o->eval_prompts < g->val.count ? g->o->eval_prompts : g->val.count;
    const int ranks = g->t->dist.ranks, rank = g->t->dist.rank;
    double *cost = (double *)xcalloc((size_t)count, sizeof *cost);
    Outcome *outcome = (Outcome *)xcalloc((size_t)count, sizeof *outcome);
    int64_t cut[ranks + 1];
    for (int64_t i = 0; i < count; i++) cost[i] = prompts_length(&g->val, i) + (double)g->o->max_completion;
    dist_cut(cost, count, ranks, cut);
    v.outcome = outcome + cut[rank];
    if (!evaluate_tasks(&v, &g->engine, &how, &g->val, cut[rank], cut[rank + 1] - cut[rank], &g->t->text, NULL, NULL,
                        NULL, &e))
        die("%s: %s", g->o->val, e.text);
    dist_complete(&g->t->dist, outcome, cut, sizeof *outcome);
    evaluation_summarise(&v, outcome, count);
    v.outcome = NULL;
    free(cost), free(outcome);
    Metrics *m = &g->t->metrics;
    char line[256] = "", key[32];
    metrics_set(m, "eval_accuracy", v.greedy);
    metrics_set(m, "eval_completions/mean_length", v.tokens);
    for (int k = 0; k < v.ks; k++) {
        snprintf(key, sizeof key, "eval_pass@%d", v.k[k]);
        metrics_set(m, key, v.pass[k]);
        snprintf(line + strlen(line), sizeof line - strlen(line), " | pass@%d %.1f%%", v.k[k], 100 * v.pass[k]);
    }
    metrics_line(m, "eval  %s | greedy accuracy %.1f%%%s | %lld prompts | %.1f s", when, 100 * v.greedy, line,
                 (long long)v.prompts, program_seconds() - start);
    return v;
}

/* Prints the evaluation before and after the run, and adds it to the report. */
static inline void generation_compare(Generation *g, const Evaluation *before, const Evaluation *after) {
    Metrics *m = &g->t->metrics;
    char a[32], b[32];
    if (!before->prompts) return;
    snprintf(a, sizeof a, "%.1f %%", 100 * before->greedy);
    snprintf(b, sizeof b, "%.1f %%", 100 * after->greedy);
    metrics_final(m, "Held-out greedy accuracy", a, b);
    metrics_line(m, "held-out greedy accuracy: %s before, %s after", a, b);
    for (int k = 0; k < after->ks; k++) {
        char name[32];
        snprintf(name, sizeof name, "Held-out pass@%d", after->k[k]);
        snprintf(a, sizeof a, "%.1f %%", 100 * before->pass[k]);
        snprintf(b, sizeof b, "%.1f %%", 100 * after->pass[k]);
        metrics_final(m, name, a, b);
    }
}

/* Prints greedy completions of the first held-out prompts, or of the first training prompts if there are none. */
static inline void generation_show(Generation *g, const char *when) {
    Error e;
    const Prompts *p = g->o->val ? &g->val : &g->train;
    Sampling how = g->sampling;
    how.temperature = 0;
    if (g->t->dist.rank) return;
    for (int64_t i = 0; i < p->count && i < g->o->sample_count; i++) {
        Completion c;
        RolloutRequest q = {
            .prompt = prompts_tokens(p, i), .prompt_len = prompts_length(p, i), .samples = 1, .out = &c};
        if (!rollout_run(&g->engine, &how, &q, 1, NULL, NULL, &e)) die("%s", e.text);
        char *text = model_text_decode(&g->t->text, c.tokens, c.count, false);
        const RewardInput in = prompts_input(p, i, text, &c, 0, how.max_new);
        const double right = evaluation_check(&in);
        metrics_line(&g->t->metrics, "%-6s %s%s%s", when, p->what[i].text, text,
                     isnan(right)  ? ""
                     : right > 0.5 ? "  (right)"
                                   : "  (wrong)");
        metrics_sample(&g->t->metrics, when, p->what[i].text, text, p->what[i].answer, right);
        free(text);
        completion_free(&c);
    }
}

/* Sets TRL's metrics of each reward and of the completion lengths. Warns if no completion ended. */
static inline void generation_log(Generation *g) {
    Metrics *m = &g->t->metrics;
    char key[128];
    float *part = (float *)xmalloc((size_t)g->answers * sizeof *part);
    for (int k = 0; k < g->rewards.count; k++) {
        for (int32_t i = 0; i < g->answers; i++) part[i] = g->answer[i].parts[k];
        const Spread s = spread_of(part, g->answers, 1);
        snprintf(key, sizeof key, "rewards/%s/mean", g->rewards.name[k]);
        metrics_set(m, key, s.mean);
        snprintf(key, sizeof key, "rewards/%s/std", g->rewards.name[k]);
        metrics_set(m, key, s.std);
    }
    free(part);
    double sum[2] = {0}, least[2] = {INFINITY, INFINITY}, most[2] = {-INFINITY, -INFINITY}, count[2] = {0};
    for (int32_t i = 0; i < g->answers; i++)
        for (int ended = 0; ended < 2; ended++) {
            const Completion *c = &g->answer[i].completion;
            if (ended && !c->finished) continue;
            sum[ended] += c->count;
            count[ended]++;
            least[ended] = fmin(least[ended], c->count);
            most[ended] = fmax(most[ended], c->count);
        }
    metrics_set(m, "completions/mean_length", sum[0] / count[0]);
    metrics_set(m, "completions/min_length", least[0]);
    metrics_set(m, "completions/max_length", most[0]);
    metrics_set(m, "completions/clipped_ratio", 1 - count[1] / count[0]);
    metrics_set(m, "completions/mean_terminated_length", count[1] ? sum[1] / count[1] : 0);
    metrics_set(m, "completions/min_terminated_length", count[1] ? least[1] : 0);
    metrics_set(m, "completions/max_terminated_length", count[1] ? most[1] : 0);
    metrics_set(m, "timing_s/gen", g->gen_seconds);
    metrics_set(m, "timing_s/reward", g->reward_seconds);
    metrics_set(m, "epoch", cursor_epochs(&g->cursor));
    if (count[1] == 0)
        metrics_line(m, "%s: warning: no completion ended within %lld tokens", g->t->program,
                     (long long)g->o->max_completion);
}

#endif
