/* rollout_dump.h - --rollouts: completions of some steps with the values of their tokens, for the file of rollouts.h and
 * the report.
 *
 * A dump is made at --rollout-steps steps of the run, the first and the last included, evenly spaced in the logarithm of
 * the step. It holds completions of --rollout-prompts prompts, the same at each dump, sampled for it by the policy after
 * the step, and the groups of the step with the largest spread of rewards, as they were trained on. The first dump is
 * made before the first step. The samples have random numbers of their own, so the run itself is the same with and
 * without them. With a report but no --rollouts, only groups that were trained on are kept, which costs no sampling.
 *
 * A trainer calls, in this order:
 *
 *     RolloutDump d;
 *     PolicyLossConfig loss = policy_loss_config(POLICY_GRPO);
 *     PolicyBatch part = {0};
 *     const RolloutDumpOptions options = rollout_dump_options();
 *     rollout_dump_open(&d, &options, &g);                            // after generation_open()
 *     rollout_dump_schedule(&d, 100);                                 // after trainer_schedule()
 *     for (...) {
 *         rollout_dump_begin(&d, &loss, advantage, g.completions, 7); // before the step
 *         if (d.clip) clip_histogram_policy(d.clip, &loss, &part);    // of each micro-batch
 *         rollout_dump_step(&d, 0, g.completions, &(RolloutValues){.advantage = advantage});
 *     }
 *     rollout_dump_close(&d);
 *
 * The functions are collective, but only rank 0 writes.
 */
#ifndef LLMC_TRAIN_ROLLOUT_DUMP_H
#define LLMC_TRAIN_ROLLOUT_DUMP_H

#include "../base/error.h"           /* xcalloc, die, Error, usage_error, ... */
#include "../base/io.h"              /* XXH3_64bits */
#include "../base/json_text.h"       /* json_finite, json_utf8 */
#include "../base/options.h"         /* OPTION_INT, OPTION_TEXT, Option, OptionUse, ... */
#include "../base/program.h"         /* program_bytes */
#include "../base/random.h"          /* RANDOM_DUMP, Random, random_real, random_start */
#include "../dist/dist.h"            /* DIST_FIELDS, dist_sum */
#include "../loss/advantage.h"       /* spread_of */
#include "../loss/clip_histogram.h"  /* CLIP_BINS, ClipHistogram, CLIP_ROWS, clip_histogram, ... */
#include "../loss/policy.h"          /* PolicyLossConfig, POLICY_GMPO, POLICY_LOSS_CHOICES, policy_by_sequence */
#include "../model/backend.h"        /* Draw, Head */
#include "../model/batch.h"          /* Batch */
#include "../model/decode.h"         /* DecodeStep, model_decode */
#include "../model/micro_plan.h"     /* micro_plan_free */
#include "../model/model.h"          /* Model */
#include "../model/model_text.h"     /* model_text_decode_bytes */
#include "../model/transformer.h"    /* ModelOutput, model_head */
#include "../model/workspace.h"      /* Workspace, KVCache, WORK_entropy, WORK_target, ... */
#include "../report/metrics.h"       /* metrics_rollout, Metrics, metrics_fact, metrics_line, ... */
#include "../report/rollouts.h"      /* RolloutTexts, rollout_texts, rollout_texts_add, rollout_texts_end */
#include "../report/run_facts.h"     /* RUN_SAMPLES */
#include "../reward/rewards.h"       /* REWARD_VERIFY */
#include "../reward/verify_answer.h" /* RewardInput */
#include "../rollout/episodes.h"     /* episode_row_named */
#include "../rollout/evaluation.h"   /* evaluation_check */
#include "../rollout/prompts.h"      /* PromptText, prompts_input, prompts_request */
#include "../rollout/rollout.h"      /* Completion, completion_mask, RolloutRequest, Rollout, ... */
#include "../rollout/trajectory.h"   /* Trajectory, trajectory_stop_name */
#include "generation.h"              /* Generation, generation_token_arrays, ScoredCompletion, ... */
#include "generation_options.h"      /* GenerationOptions */
#include "trainer.h"                 /* Trainer, TrainerPause, trainer_go_on, trainer_pause */

typedef struct RolloutDumpOptions {
    const char *path, *steps;
    int64_t prompts, samples;
} RolloutDumpOptions;

static inline RolloutDumpOptions rollout_dump_options(void) {
    return (RolloutDumpOptions){.steps = "24", .prompts = 4};
}

// clang-format off
#define ROLLOUT_DUMP_OPTIONS(o)                                                                                        \
    OPTION_TEXT("rollouts",        0, &(o).path,    "FILE",                                                            \
                "write completions of some steps with the values of their tokens, as JSON lines (.zst compresses)"),   \
    OPTION_TEXT("rollout-steps",   0, &(o).steps,   "N",                                                               \
                "number of these steps, evenly spaced in log time, or all"),                                           \
    OPTION_INT ("rollout-prompts", 0, &(o).prompts, 0, 4096,                                                           \
                "prompts that are sampled at each of them, beside the two groups with the largest spread of rewards"), \
    OPTION_INT ("rollout-samples", 0, &(o).samples, 1, 4096,                                                           \
                "completions of each of these prompts (default: the size of a group)")
// clang-format on

enum { ROLLOUT_WIDEST = 2, ROLLOUT_TRAINED = 4, ROLLOUT_CLIP_TOKENS = 256, ROLLOUT_CLIP_CONTEXT = 12 };

/* What the trainer has beside the arrays of its Generation; NULL: it has it not. */
typedef struct RolloutValues {
    const float *advantage;       /* (completions) */
    const float *token_advantage; /* (tokens) */
    const float *score;           /* (completions) the reward, if it is not that of the Generation */
    const float *gold;            /* (completions) */
    bool old_logp, ref_logp;      /* the Generation's arrays of these names are filled in */
} RolloutValues;

typedef struct RolloutDump RolloutDump;

/* Scores the fixed completions, which have their texts and rewards; writes the reward and, if the run has one, the gold
 * reward of each. */
typedef void (*RolloutScore)(void *context, Generation *fixed, float *score, float *gold);

struct RolloutDump {
    const RolloutDumpOptions *o;
    Generation *g;
    const Model *reference; /* NULL: there is none */
    const Workspace *work, *reference_work;
    RolloutScore score; /* NULL: the reward is that of the rewards */
    void *context;
    bool gold;           /* score() writes gold rewards */
    bool on, writes;     /* something is kept; a file is written */
    int64_t *steps;      /* (count) increasing: the dumps that are due */
    size_t count, next;  /* number; index of the next one */
    size_t made;         /* dumps of this process */
    ClipHistogram *clip; /* of the current optimizer step; NULL: it is not dumped */
    ClipHistogram histogram;
    PolicyLossConfig loss; /* of the histogram */
    const char *method;    /* its name in the file; NULL: that of loss.loss */
    GenerationOptions fixed_options;
    Generation fixed; /* completions of the fixed prompts */
    float *fixed_score, *fixed_gold;
    uint64_t stream;               /* of the first fixed completion's random numbers; those of the others follow it */
    int32_t *drawn;                /* (fixed completions) number of tokens that rollout_dump_decode() has seen */
    float *row_logp, *row_entropy; /* (targets of the engine) */
};

/* ---- which steps ---- */

/* The dumps of a run of `steps` steps: 0 and, evenly spaced in log time, N - 1 steps from the first to the last, each
 * once. Returns their number; out: (N). */
static inline size_t rollout_dump_steps(int64_t steps, int64_t N, int64_t *out) {
    size_t n = 0;
    out[n++] = 0;
    for (int64_t i = 1; i < N; i++) {
        const double share = N > 2 ? (double)(i - 1) / (double)(N - 2) : 1;
        const int64_t step = i == N - 1 ? steps : (int64_t)llround(exp(share * log((double)steps)));
        if (step > out[n - 1] && step <= steps) out[n++] = step;
    }
    return n;
}

static inline bool rollout_dump_all(const RolloutDumpOptions *o) { return !strcmp(o->steps, "all"); }

/* The number of --rollout-steps; 0: it is none. */
static inline int64_t rollout_dump_number(const RolloutDumpOptions *o) {
    char *end;
    errno = 0;
    const long long n = strtoll(o->steps, &end, 10);
    return !*o->steps || *end || errno || n < 2 || n > 1000000 ? 0 : n;
}

/* Rejects values that are not possible. report: the run writes a report. */
static inline void rollout_dump_check(const RolloutDumpOptions *o, const Option *table) {
    const OptionUse use[] = {{&o->steps, o->path != NULL, "used only with --rollouts"},
                             {&o->prompts, o->path != NULL, "used only with --rollouts"},
                             {&o->samples, o->path != NULL, "used only with --rollouts"}};
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    if (!rollout_dump_all(o) && !rollout_dump_number(o))
        usage_error("--rollout-steps: '%s' is neither a number from 2 to 1000000 nor all", o->steps);
    if (o->path && !strcmp(o->path, "-")) usage_error("--rollouts: give a file; standard output is not possible");
}

/* ---- opening ---- */

/* The name of the run in its file: a hash of the model's lineage and of the options, kept in the state. */
static inline const char *rollout_dump_run(Trainer *t) {
    const char *name = json_string_value(json_object_get(t->state, "run"));
    if (name) return name;
    char hash[20], *text = json_dumps(t->file.lineage, JSON_COMPACT | JSON_SORT_KEYS);
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)XXH3_64bits(text ? text : "", text ? strlen(text) : 0));
    free(text);
    json_object_set_new(t->state, "run", json_string(hash));
    return json_string_value(json_object_get(t->state, "run"));
}

/* Allocates what the fixed prompts need: a Generation whose completions and arrays are its own. */
static inline void rollout_dump_open_fixed(RolloutDump *d) {
    const Generation *g = d->g;
    Generation *v = &d->fixed;
    d->fixed_options = *g->o;
    d->fixed_options.prompts = d->o->prompts < g->train.count ? d->o->prompts : g->train.count;
    d->fixed_options.generations = d->o->samples ? d->o->samples : g->o->generations;
    const int64_t G = d->fixed_options.generations;
    const int slots = (int)g->o->slots, most = rollout_rows(slots, generation_longest_prompt(g)) - slots;
    if (G > most)
        die("--rollout-samples: %lld completions of one prompt, at most %d can be sampled at once", (long long)G, most);
    const size_t n = (size_t)(d->fixed_options.prompts * G);
    v->o = &d->fixed_options;
    v->scored = (ScoredCompletion *)xcalloc(n, sizeof *v->scored);
    v->reward = (float *)xcalloc(n, sizeof(float));
    v->counts = (uint8_t *)xcalloc(n, 1);
    v->off_policy = (uint8_t *)xcalloc(n, 1);
    v->offset = (int32_t *)xcalloc(n + 1, sizeof(int32_t));
    v->slice_offset = (int32_t *)xcalloc(n + 1, sizeof(int32_t));
    v->cut = (int64_t *)xcalloc((size_t)g->t->dist.ranks + 1, sizeof *v->cut);
    v->owner = (int32_t *)xcalloc((size_t)d->fixed_options.prompts, sizeof *v->owner);
    for (int i = 0; generation_token_arrays(v, i); i++)
        *generation_token_arrays(v, i) = (float *)xcalloc(generation_tokens_max(v), sizeof(float));
    d->fixed_score = (float *)xcalloc(n, sizeof(float));
    d->fixed_gold = (float *)xcalloc(n, sizeof(float));
    d->drawn = (int32_t *)xcalloc(n, sizeof *d->drawn);
    d->row_logp = (float *)xcalloc((size_t)g->engine.work.targets, sizeof(float));
    d->row_entropy = (float *)xcalloc((size_t)g->engine.work.targets, sizeof(float));
}

/* Opens the file. The fields that the trainer sets by itself, from `reference` to `gold`, may be set afterwards. */
static inline void rollout_dump_open(RolloutDump *d, const RolloutDumpOptions *o, Generation *g) {
    Error e;
    Trainer *t = g->t;
    const char *run = rollout_dump_run(t);
    *d = (RolloutDump){.o = o, .g = g, .on = o->path || t->o->report, .writes = o->path};
    if (!d->on) return;
    if (d->writes && o->prompts) rollout_dump_open_fixed(d);
    const char *path = t->dist.rank ? NULL : o->path;
    if (!metrics_open_rollouts(&t->metrics, path, run, &e)) die("%s", e.text);
    metrics_fact(&t->metrics, "run", json_string(run));
}

static inline void rollout_dump_close(RolloutDump *d) {
    Generation *v = &d->fixed;
    for (int i = 0; v->o && generation_token_arrays(v, i); i++) free(*generation_token_arrays(v, i));
    free(v->scored), free(v->reward), free(v->counts), free(v->off_policy), free(v->offset), free(v->slice_offset);
    free(v->cut), free(v->owner);
    micro_plan_free(&v->plan);
    free(d->fixed_score), free(d->fixed_gold), free(d->drawn), free(d->row_logp), free(d->row_entropy), free(d->steps);
    *d = (RolloutDump){0};
}

/* Sets the dumps of a run of `steps` optimizer steps; those that a resumed run has made are not due again. */
static inline void rollout_dump_schedule(RolloutDump *d, int64_t steps) {
    const int64_t N = rollout_dump_all(d->o) ? steps + 1 : rollout_dump_number(d->o);
    if (!d->on) return;
    d->steps = (int64_t *)xcalloc((size_t)N, sizeof *d->steps);
    d->count = rollout_dump_steps(steps, N, d->steps);
    for (int64_t i = 0; rollout_dump_all(d->o) && i <= steps; i++) d->steps[i] = i;
    if (rollout_dump_all(d->o)) d->count = (size_t)N;
    while (d->next < d->count && d->steps[d->next] <= d->g->t->step) d->next++;
    if (!d->g->t->step) d->next = 0;
}

/* ---- groups as JSON ---- */

/* The texts of a completion's tokens. */
static inline json_t *rollout_dump_texts(const Generation *g, const Completion *c) {
    RolloutTexts texts = rollout_texts();
    for (int32_t i = 0; i < c->count; i++) {
        size_t n;
        char *text = model_text_decode_bytes(&g->t->text, c->tokens + i, 1, true, &n);
        rollout_texts_add(&texts, text, n, i + 1 == c->count);
        free(text);
    }
    return rollout_texts_end(&texts);
}

/* Values of the drawn tokens, from `at` on, as a list with one entry for each token: observed ones have none. */
static inline json_t *rollout_dump_list(const Completion *c, const float *values, int32_t at) {
    const uint8_t *drawn = completion_mask(c);
    json_t *all = json_array();
    for (int32_t k = 0; k < c->count; k++)
        json_array_append_new(all, drawn && !drawn[k] ? json_null() : json_finite((double)values[at++]));
    return all;
}

/* The lengths of the runs of drawn and of observed tokens, drawn ones first. */
static inline json_t *rollout_dump_runs(const Completion *c) {
    const uint8_t *drawn = completion_mask(c);
    json_t *runs = json_array();
    int32_t length = 0;
    bool on = true;
    for (int32_t k = 0; k < c->count; k++) {
        if ((!drawn || drawn[k]) != on) {
            json_array_append_new(runs, json_integer(length));
            length = 0;
            on = !on;
        }
        length++;
    }
    json_array_append_new(runs, json_integer(length));
    return runs;
}

/* When each turn of a trajectory began and ended, in seconds from its start. */
static inline json_t *rollout_dump_times(const Trajectory *y) {
    json_t *times = json_array();
    for (int32_t k = 0; k < y->turns; k++)
        json_array_append_new(times,
                              json_pack("[o, o]", json_finite((double)y->began[k]), json_finite((double)y->ended[k])));
    return times;
}

/* How a completion ended, its turns, and what a trajectory has beside them. */
static inline void rollout_dump_end(const Completion *c, json_t *o) {
    const Trajectory *y = c->trajectory;
    json_object_set_new(o, "finished", json_boolean(c->finished));
    json_object_set_new(o, "stop",
                        json_string(y             ? trajectory_stop_name(y->stop)
                                    : c->finished ? "completed"
                                                  : "max_tokens"));
    json_object_set_new(o, "turns", json_integer(y ? y->turns : 1));
    if (!y) return;
    episode_row_named(o, y);
    if (isfinite(y->began[0])) json_object_set_new(o, "turn_times", rollout_dump_times(y));
    json_object_set_new(o, "calls", json_integer(y->counts.calls));
    json_object_set_new(o, "failed_calls", json_integer(y->counts.failed_calls));
    json_object_set_new(o, "parse_errors", json_integer(y->counts.parse_errors));
}

/* The rewards of a completion by their names. */
static inline json_t *rollout_dump_rewards(const Generation *g, const ScoredCompletion *s) {
    json_t *parts = json_object();
    for (int k = 0; k < g->rewards.count; k++)
        json_object_set_new(parts, g->rewards.name[k], json_finite((double)s->parts[k]));
    return parts;
}

/* 1: a completion is right, 0: it is wrong, NaN: unknown. The reward `verify` has told already, also of programs. */
static inline double rollout_dump_right(const Generation *g, const ScoredCompletion *s) {
    for (int k = 0; k < g->rewards.count; k++)
        if (g->rewards.part[k].kind == REWARD_VERIFY && !isnan(s->parts[k])) return s->parts[k] > 0.5f;
    const RewardInput in = prompts_input(&g->train, s->prompt, s->text, s->text_length, &s->completion, s->id,
                                         (int32_t)g->o->max_completion);
    return evaluation_check(&in);
}

/* Completion i of a generation as an object; k: its number in the group. */
static inline json_t *rollout_dump_sample(const Generation *g, int32_t i, int32_t k, const RolloutValues *x) {
    const ScoredCompletion *s = &g->scored[i];
    const Completion *c = &s->completion;
    const int32_t at = g->offset[i], n = g->offset[i + 1] - at;
    const double right = rollout_dump_right(g, s);
    char id[48];
    snprintf(id, sizeof id, "%lld.%d", (long long)s->prompt, k);
    json_t *o = json_object();
    json_object_set_new(o, "id", json_string(id));
    if (s->off_policy) json_object_set_new(o, "off_policy", json_true());
    json_object_set_new(o, "text", json_utf8(s->text, s->text_length));
    json_object_set_new(o, "tokens", rollout_dump_texts(g, c));
    json_object_set_new(o, "drawn", rollout_dump_runs(c));
    json_object_set_new(o, "logp", rollout_dump_list(c, g->logp, at));
    if (x->old_logp) json_object_set_new(o, "old_logp", rollout_dump_list(c, g->old_logp, at));
    json_object_set_new(o, "sampler_logp", rollout_dump_list(c, g->sampler_logp, at));
    if (x->ref_logp) json_object_set_new(o, "ref_logp", rollout_dump_list(c, g->ref_logp, at));
    json_object_set_new(o, "entropy", rollout_dump_list(c, g->entropy, at));
    json_object_set_new(o, "advantage",
                        x->token_advantage ? rollout_dump_list(c, x->token_advantage, at)
                                           : json_finite(x->advantage ? (double)x->advantage[i] : NAN));
    json_object_set_new(o, "rewards", rollout_dump_rewards(g, s));
    json_object_set_new(o, "reward", json_finite((double)(x->score ? x->score[i] : s->reward)));
    json_object_set_new(o, "gold", json_finite(x->gold ? (double)x->gold[i] : NAN));
    if (x->ref_logp) {
        double kl = 0;
        for (int32_t t = at; t < at + n; t++) kl += (double)g->logp[t] - g->ref_logp[t];
        json_object_set_new(o, "kl", json_finite(kl));
    }
    json_object_set_new(o, "right", isnan(right) ? json_null() : json_boolean(right > 0.5));
    rollout_dump_end(c, o);
    return o;
}

/* Writes a group. kind: see rollouts.h. */
static inline void rollout_dump_group(const RolloutDump *d, const Generation *g, int32_t group, const char *kind,
                                      const RolloutValues *x) {
    const int32_t G = (int32_t)g->o->generations;
    const int64_t prompt = g->scored[group * G].prompt;
    const PromptText *what = &g->train.what[prompt];
    json_t *o = json_object(), *samples = json_array();
    json_object_set_new(o, "step", json_integer(d->g->t->step));
    json_object_set_new(o, "kind", json_string(kind));
    json_object_set_new(o, "prompt_id", json_integer(prompt));
    json_object_set_new(o, "prompt", json_utf8(what->text, strlen(what->text)));
    if (what->task && *what->task) json_object_set_new(o, "task", json_utf8(what->task, strlen(what->task)));
    if (what->answer && *what->answer) json_object_set_new(o, "answer", json_utf8(what->answer, strlen(what->answer)));
    for (int32_t k = 0; k < G; k++) json_array_append_new(samples, rollout_dump_sample(g, group * G + k, k, x));
    json_object_set_new(o, "samples", samples);
    metrics_rollout(&d->g->t->metrics, o);
}

/* ---- the fixed prompts ---- */

/* Like model_decode(), and keeps the log-probabilities and entropies of the tokens drawn, so that no model runs over the
 * completions again for them. Those of completion i begin at i times the maximum length of a completion. Used as Rollout.decode,
 * with the dump as its context. */
static inline void rollout_dump_decode(void *dump, const Model *m, const Workspace *w, const KVCache *kv,
                                       const Batch *batch, Draw how, const DecodeStep *step) {
    RolloutDump *d = (RolloutDump *)dump;
    const size_t R = (size_t)batch->targets;
    model_decode(m, w, kv, batch, how, step);
    if (!R) return;
    Head head = model_head(m, w, batch, how.temperature);
    head.entropy = work_floats(w, WORK_entropy, 0);
    m->backend->upload(m->device, work_ints(w, WORK_target), step->token, R * sizeof(int32_t));
    m->backend->head(m->device, &head);
    m->backend->download(m->device, d->row_logp, head.logp, R * sizeof(float));
    m->backend->download(m->device, d->row_entropy, head.entropy, R * sizeof(float));
    for (size_t r = 0; r < R; r++) {
        const uint64_t low = (uint32_t)step->stream[2 * r], high = (uint32_t)step->stream[2 * r + 1];
        const size_t i = (size_t)((high << 32 | low) - d->stream);
        const size_t at = i * (size_t)d->fixed.o->max_completion + (size_t)d->drawn[i]++;
        d->fixed.logp[at] = d->row_logp[r];
        d->fixed.entropy[at] = d->row_entropy[r];
    }
}

/* Whether rollout_dump_decode() sees the tokens of the fixed completions, in their order. */
static inline bool rollout_dump_decodes(const RolloutDump *d) {
    const Rollout *r = &d->g->engine;
    return !r->decode && !r->run && !r->turns && d->g->sampling.temperature > 0;
}

/* Samples and scores completions of the fixed prompts. Rank 0 samples, so that the completions are the same on any
 * number of ranks. */
static inline void rollout_dump_sample_fixed(RolloutDump *d) {
    Error e;
    Generation *g = d->g, *v = &d->fixed;
    const int32_t P = (int32_t)v->o->prompts, G = (int32_t)v->o->generations;
    Sampling how = g->sampling;
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)P, sizeof *q);
    Completion *out = (Completion *)xcalloc((size_t)(P * G), sizeof *out);
    how.stream = d->stream = RANDOM_DUMP + ((uint64_t)g->t->step << 24); /* each dump has draws of its own */
    memset(d->drawn, 0, (size_t)(P * G) * sizeof *d->drawn);
    const bool decodes = rollout_dump_decodes(d);
    if (decodes) {
        g->engine.decode = rollout_dump_decode;
        g->engine.decode_context = d;
    }
    for (int32_t i = 0; i < P; i++) {
        const int64_t prompt = (int64_t)i * g->train.count / P;
        for (int32_t k = 0; k < G; k++)
            v->scored[i * G + k] = (ScoredCompletion){.prompt = prompt, .id = (uint64_t)(i * G + k)};
        q[i] = prompts_request(&g->train, prompt, G, (uint64_t)(i * G), out + i * G);
    }
    const bool mine = !g->t->dist.rank;
    if (mine && !rollout_run(&g->engine, &how, q, P, NULL, NULL, &e)) die("%s: %s", g->train.shard.name, e.text);
    if (decodes) g->engine.decode = NULL;
    for (int32_t i = 0; i < P * G; i++) v->scored[i].completion = out[i];
    v->completions = P * G;
    generation_spread(v, v->scored, v->owner, P);
    generation_score_completions(v, v->scored, v->completions);
    for (int32_t i = 0; i < P * G; i++) d->fixed_score[i] = v->scored[i].reward;
    if (d->score) d->score(d->context, v, d->fixed_score, d->fixed_gold);
    free(q), free(out);
}

/* Moves the values that rollout_dump_decode() has kept to where the arrays of the fixed completions have them. */
static inline void rollout_dump_compact(RolloutDump *d) {
    Generation *v = &d->fixed;
    for (int32_t i = 0; i < v->completions; i++) {
        const size_t from = (size_t)i * (size_t)v->o->max_completion;
        const size_t bytes = (size_t)d->drawn[i] * sizeof(float);
        memmove(v->logp + v->offset[i], v->logp + from, bytes);
        memmove(v->entropy + v->offset[i], v->entropy + from, bytes);
    }
}

/* Fills in the arrays of the fixed completions: log-probabilities and entropies, all computed by rank 0. */
static inline void rollout_dump_values(RolloutDump *d) {
    Generation *v = &d->fixed;
    const int32_t n = v->completions;
    const ModelOutput policy = {.logp = v->logp, .entropy = v->entropy}, reference = {.logp = v->ref_logp};
    for (int32_t i = 0; i < n; i++) {
        const Completion *c = &v->scored[i].completion;
        const uint8_t *drawn = completion_mask(c);
        v->offset[i + 1] = v->offset[i] + completion_drawn(c);
        v->counts[i] = 1;
        for (int32_t k = 0, at = v->offset[i]; k < c->count; k++)
            if (!drawn || drawn[k]) v->sampler_logp[at++] = c->logp[k];
    }
    for (int r = 1; r <= d->g->t->dist.ranks; r++) v->cut[r] = n;
    if (rollout_dump_decodes(d)) rollout_dump_compact(d);
    else generation_forward(v, &d->g->t->model, d->work, 0, n, &policy);
    if (d->reference) generation_forward(v, d->reference, d->reference_work, 0, n, &reference);
}

/* Samples the fixed prompts and writes their groups. */
static inline void rollout_dump_fixed(RolloutDump *d) {
    Generation *v = &d->fixed, *g = d->g;
    if (!v->o) return;
    Generation own = *v;
    *v = *g; /* the parts that are shared: the prompts, the rewards, the batch */
    v->o = own.o;
    v->parts = 1;
    v->scored = own.scored, v->reward = own.reward, v->counts = own.counts, v->off_policy = own.off_policy;
    v->offset = own.offset, v->slice_offset = own.slice_offset, v->cut = own.cut, v->owner = own.owner,
    v->plan = own.plan;
    for (int i = 0; generation_token_arrays(v, i); i++)
        *generation_token_arrays(v, i) = *generation_token_arrays(&own, i);
    rollout_dump_sample_fixed(d);
    rollout_dump_values(d);
    g->rewards = v->rewards; /* a reward program that was started anew */
    const RolloutValues x = {
        .score = d->fixed_score, .gold = d->gold ? d->fixed_gold : NULL, .ref_logp = d->reference != NULL};
    const int32_t P = (int32_t)v->o->prompts;
    for (int32_t i = 0; i < P && !g->t->dist.rank; i++) rollout_dump_group(d, v, i, "fixed", &x);
    generation_forget(v, 0);
    v->completions = 0;
}

/* ---- groups that were trained on ---- */

/* Standard deviation of a group's rewards; negative if it has none. */
static inline double rollout_dump_spread(const Generation *g, int32_t group, const RolloutValues *x) {
    const int32_t G = (int32_t)g->o->generations;
    float reward[G];
    for (int32_t k = 0; k < G; k++) reward[k] = x->score ? x->score[group * G + k] : g->scored[group * G + k].reward;
    const double std = spread_of(reward, G, 1).std;
    return isfinite(std) ? std : -1;
}

/* Writes the groups with the largest spread. */
static inline void rollout_dump_widest(RolloutDump *d, const RolloutValues *x) {
    const Generation *g = d->g;
    const int32_t P = g->completions / (int32_t)g->o->generations;
    const int32_t most = d->fixed.o ? ROLLOUT_WIDEST : ROLLOUT_TRAINED;
    bool *taken = (bool *)xcalloc((size_t)P, sizeof *taken);
    for (int32_t n = 0; n < most && n < P; n++) {
        int32_t widest = -1;
        for (int32_t i = 0; i < P; i++)
            if (!taken[i] && (widest < 0 || rollout_dump_spread(g, i, x) > rollout_dump_spread(g, widest, x)))
                widest = i;
        taken[widest] = true;
        rollout_dump_group(d, g, widest, "trained", x);
    }
    free(taken);
}

/* Gathers the values of all completions, which each rank has of its own. Collective. */
static inline void rollout_dump_gather(Generation *g) {
    const int32_t size = g->completions / g->parts;
    for (int32_t part = 0; part < g->parts && g->t->dist.ranks > 1; part++) {
        generation_complete(g, g->logp, part * size, (part + 1) * size);
        generation_complete(g, g->entropy, part * size, (part + 1) * size);
    }
}

/* ---- the clip ---- */

/* Whether a dump is due at or before this step. */
static inline bool rollout_dump_due(const RolloutDump *d, int64_t step) {
    return d->on && d->next < d->count && d->steps[d->next] <= step;
}

/* Begins the optimizer steps whose ratios are counted together. step: the last one of their generation, at which a dump
 * may be due, or -1 for steps that are not dumped. advantage: (n) those of the steps. */
static inline void rollout_dump_begin(RolloutDump *d, const PolicyLossConfig *c, const float *advantage, int64_t n,
                                      int64_t step) {
    double low, high;
    d->clip = NULL;
    if (!rollout_dump_due(d, step)) return;
    clip_histogram_thresholds(c, &low, &high);
    d->loss = *c;
    d->histogram = clip_histogram(low, high);
    clip_histogram_sizes(&d->histogram, advantage, n);
    d->clip = &d->histogram;
}

/* Counts the tokens of completions [first, end) that count, with an advantage for each token. */
static inline void rollout_dump_count(RolloutDump *d, const GenerationSlice *x, const float *advantage) {
    for (int32_t i = 0; d->clip && i < x->count; i++)
        for (int32_t t = x->offset[i]; x->counts[i] && t < x->offset[i + 1]; t++)
            clip_histogram_add(d->clip, (double)x->logp[t] - x->old_logp[t], (double)advantage[t]);
}

/* A token of completion i as an object: its ratio, advantage and text, and the text before it. */
static inline json_t *rollout_dump_token(const Generation *g, int32_t i, int32_t t, const RolloutValues *x) {
    const Completion *c = &g->scored[i].completion;
    const int32_t k = t - g->offset[i], from = k > ROLLOUT_CLIP_CONTEXT ? k - ROLLOUT_CLIP_CONTEXT : 0;
    const double A = x->token_advantage ? (double)x->token_advantage[t] : x->advantage ? (double)x->advantage[i] : NAN;
    size_t before, here;
    const int32_t *ids = completion_drawn_ids(c);
    char *context = model_text_decode_bytes(&g->t->text, ids + from, k - from, true, &before);
    char *text = model_text_decode_bytes(&g->t->text, ids + k, 1, true, &here);
    json_t *o = json_object();
    json_object_set_new(o, "log_ratio", json_finite((double)g->logp[t] - g->old_logp[t]));
    json_object_set_new(o, "advantage", json_finite(A));
    json_object_set_new(o, "before", json_utf8(context, before));
    json_object_set_new(o, "text", json_utf8(text, here));
    free(context), free(text);
    return o;
}

/* Tokens of completions [first, end), drawn in proportion to |log rho|, each at most once; not those of another policy, which
 * have no rho. */
static inline json_t *rollout_dump_tokens(const RolloutDump *d, int32_t first, int32_t end, const RolloutValues *x) {
    const Generation *g = d->g;
    Random random = random_start((uint64_t)g->t->o->seed, RANDOM_DUMP + (1ull << 55) + (uint64_t)g->t->step);
    const int32_t from = g->offset[first], n = g->offset[end] - from;
    json_t *all = json_array();
    double *weight = (double *)xcalloc((size_t)n + 1, sizeof *weight), sum = 0;
    for (int32_t i = first; i < end; i++)
        for (int32_t t = g->offset[i]; t < g->offset[i + 1] && !g->scored[i].off_policy; t++)
            sum += weight[t - from] = fabs((double)g->logp[t] - g->old_logp[t]);
    for (int drawn = 0; drawn < ROLLOUT_CLIP_TOKENS && sum > 1e-12 && isfinite(sum); drawn++) {
        double left = sum * random_real(&random);
        int32_t t = 0, i = first;
        while (t < n - 1 && left >= weight[t]) left -= weight[t++];
        sum -= weight[t];
        if (weight[t] == 0) continue;
        weight[t] = 0;
        while (g->offset[i + 1] <= from + t) i++;
        json_array_append_new(all, rollout_dump_token(g, i, from + t, x));
    }
    free(weight);
    return all;
}

/* Writes the histogram of the step's ratios. [first, end): the completions of the optimizer step. Collective. */
static inline void rollout_dump_clip(RolloutDump *d, int32_t first, int32_t end, const RolloutValues *x) {
    Trainer *t = d->g->t;
    ClipHistogram *h = d->clip;
    if (!h) return;
    d->clip = NULL;
    if (!x->old_logp) return; /* the ratio is 1 */
    dist_sum(&t->dist, DIST_FIELDS(h->sum));
    if (t->dist.rank) return;
    json_t *o = json_object(), *edges = json_array(), *sizes = json_array(), *counts = json_array(),
           *zero = json_array();
    for (int i = 0; i < CLIP_BINS - 1; i++) json_array_append_new(edges, json_finite(h->edge[i]));
    for (int i = 0; i < 3; i++) json_array_append_new(sizes, json_finite(h->size[i]));
    for (int row = 0; row < CLIP_ROWS; row++) {
        json_t *bins = json_array();
        for (int i = 0; i < CLIP_BINS; i++) json_array_append_new(bins, json_integer((json_int_t)h->sum.count[row][i]));
        json_array_append_new(counts, bins);
    }
    for (int i = 0; i < CLIP_BINS; i++) json_array_append_new(zero, json_integer((json_int_t)h->sum.zero[i]));
    const bool by_sequence = policy_by_sequence(&d->loss) && d->loss.loss != POLICY_GMPO;
    char loss[32];
    option_choice_name(POLICY_LOSS_CHOICES, d->loss.loss, loss, sizeof loss);
    json_object_set_new(o, "record", json_string("clip"));
    json_object_set_new(o, "step", json_integer(t->step));
    json_object_set_new(o, "unit", json_string(by_sequence ? "completion" : "token"));
    json_object_set_new(o, "loss", json_string(d->method ? d->method : loss));
    json_object_set_new(o, "epsilon", json_finite(d->loss.epsilon));
    json_object_set_new(o, "epsilon_high", json_finite(d->loss.epsilon_high));
    json_object_set_new(o, "delta", json_finite(d->loss.delta));
    json_object_set_new(o, "low", json_finite(h->low));
    json_object_set_new(o, "high", json_finite(h->high));
    json_object_set_new(o, "share", json_finite(clip_histogram_share(h, h->low, h->high)));
    json_object_set_new(o, "edges", edges);
    json_object_set_new(o, "sizes", sizes);
    json_object_set_new(o, "counts", counts);
    json_object_set_new(o, "zero", zero);
    json_object_set_new(o, "tokens", rollout_dump_tokens(d, first, end, x));
    metrics_rollout(&t->metrics, o);
}

/* ---- a step ---- */

/* Writes the dump if it is due. [first, end): the completions of the last optimizer step; x: the values of the
 * generation, NULL before the first step. Collective. */
static inline void rollout_dump_step(RolloutDump *d, int32_t first, int32_t end, const RolloutValues *x) {
    Trainer *t = d->g->t;
    if (!rollout_dump_due(d, t->step)) return;
    const TrainerPause pause = trainer_pause(t, RUN_SAMPLES);
    while (d->next < d->count && d->steps[d->next] <= t->step) d->next++;
    d->made++;
    if (x) {
        rollout_dump_gather(d->g);
        rollout_dump_clip(d, first, end, x);
        if (!t->dist.rank) rollout_dump_widest(d, x);
    }
    rollout_dump_fixed(d);
    trainer_go_on(t, pause);
}

/* Says how large the file is, and how large one of all steps would be. */
static inline void rollout_dump_say(const RolloutDump *d) {
    Metrics *m = &d->g->t->metrics;
    char size[16], all[16];
    if (!d->writes || !d->made || !m->rollouts || d->g->t->dist.rank) return;
    const double each = m->rollouts->bytes / (double)d->made;
    metrics_line(m, "rollouts %zu group%s of %zu steps, %s of JSON in %s; --rollout-steps all would write about %s",
                 m->rollouts->groups, PLURAL(m->rollouts->groups), d->made, program_bytes(size, m->rollouts->bytes),
                 d->o->path, program_bytes(all, each * (double)(d->g->t->steps + 1)));
}

#endif
