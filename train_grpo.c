/* train_grpo.c - group-relative policy optimisation: reinforcement learning from verifiable rewards.
 *
 * One generation:
 *   1. sample   G completions y_i to each of P prompts from the policy                        (rollout.h)
 *   2. score    r_i = sum_k w_k R_k(x, y_i): verifiers, format, length, any program           (rewards.h)
 *   3. compare  A_i = (r_i - mean of the group) / its deviation                               (advantage.h)
 *   4. improve  the policy by the clipped surrogate of A, in one or several optimizer steps   (loss_policy.h)
 *
 * Sampling and training share one set of weights in one process. A group's samples hang on one copy of their prompt, in
 * sampling and in training. Log-probabilities are scored at the temperature that they were sampled at. With one optimizer
 * step a generation the policy is that which sampled: the ratio is exactly 1, and what the sampler's log-probabilities
 * differ by is rounding, logged as sampling/sampling_logp_difference. With several, pi_old is scored before the first.
 *
 *     ./train_grpo -c sft.bin -i tasks.shard -j heldout.shard -o grpo.bin --report grpo.html
 */
#include "llmc/advantage.h"
#include "llmc/evaluation.h"
#include "llmc/loss_policy.h"
#include "llmc/trainer.h"

static struct {
    TrainerOptions t;
    const char *input, *val, *reference, *reward, *reward_cmd;
    int64_t prompts, generations, max_completion, max_prompt, iterations, steps_per_generation, slots, resample;
    int64_t eval_steps, eval_prompts, eval_samples, sample_count, top_k;
    double epochs, temperature, top_p, min_p, repetition_penalty, reward_timeout;
    double epsilon, epsilon_high, delta, beta, entropy_coef, entropy_target, top_entropy, off_policy_mask;
    int loss, importance, scale, aggregation, kl, kl_in;
    bool kl_bias_correction, mask_truncated, dynamic_sampling, adaptive_entropy;
} o;

static const Option options[] = {
    OPTION_GROUP("Data"),
    OPTION_TEXT("input", 'i', &o.input, "FILE", "prompt shard to train on (data/make_tasks, data/make_shard)"),
    OPTION_TEXT("val", 'j', &o.val, "FILE", "held-out prompt shard"),
    OPTION_INT("max-prompt-length", 0, &o.max_prompt, 1, 1 << 20, "leave out prompts of more tokens"),
    OPTION_REAL("num-train-epochs", 'e', &o.epochs, 0.001, 1e6, "passes over the prompts"),
    OPTION_INT("max-steps", 'x', &o.t.steps, 0, 1e9, "optimizer steps; 0: as many as the epochs take"),
    OPTION_GROUP("Sampling"),
    OPTION_INT("num-prompts", 'p', &o.prompts, 1, 65536, "prompts of one generation"),
    OPTION_INT("num-generations", 'G', &o.generations, 2, 4096, "completions of each prompt: the group"),
    OPTION_INT("max-completion-length", 'g', &o.max_completion, 1, 1 << 20, "most tokens of a completion"),
    OPTION_REAL("temperature", 0, &o.temperature, 0.01, 100, "of sampling and of scoring"),
    OPTION_INT("top-k", 0, &o.top_k, 0, 1 << 22, "sample among the k likeliest tokens; 0: all"),
    OPTION_REAL("top-p", 0, &o.top_p, 0.001, 1, "sample among the likeliest that weigh this much together"),
    OPTION_REAL("min-p", 0, &o.min_p, 0, 1, "leave out tokens less likely than this share of the likeliest"),
    OPTION_REAL("repetition-penalty", 0, &o.repetition_penalty, 0.01, 100, "on tokens already seen; 1: none"),
    OPTION_INT("slots", 0, &o.slots, 1, 65536, "completions that are sampled at once"),
    OPTION_FLAG("dynamic-sampling", 0, &o.dynamic_sampling,
                "replace groups whose rewards are all equal by new prompts (DAPO)"),
    OPTION_INT("max-resamples", 0, &o.resample, 1, 1000, "dynamic sampling: rounds of new prompts at most"),
    OPTION_GROUP("Reward"),
    OPTION_TEXT("reward", 'w', &o.reward, "SPEC", "parts and weights, as verify:1,format=hash:0.1; see llmc/rewards.h"),
    OPTION_TEXT("reward-cmd", 0, &o.reward_cmd, "PROGRAM", "reads a JSON line a completion, writes a number a line"),
    OPTION_REAL("reward-timeout", 0, &o.reward_timeout, 0.01, 1e6, "seconds that it may take for one batch"),
    OPTION_CHOICE("scale-rewards", 0, &o.scale, SCALE_REWARDS_CHOICES, "divide advantages by the deviation of"),
    OPTION_CHOICE("multi-objective-aggregation", 0, &o.aggregation, "sum_then_normalize|normalize_then_sum",
                  "several parts: GRPO's, or GDPO's"),
    OPTION_FLAG("mask-truncated-completions", 0, &o.mask_truncated, "leave completions that were cut out of the loss"),
    OPTION_GROUP("Loss"),
    OPTION_CHOICE("loss-type", 0, &o.loss, POLICY_LOSS_CHOICES, "objective; see llmc/loss_policy.h"),
    OPTION_CHOICE("importance-sampling-level", 0, &o.importance, IMPORTANCE_CHOICES, "the ratio is one number a"),
    OPTION_REAL("epsilon", 0, &o.epsilon, -1, 1e6, "lower clip range; -1: the loss's own default"),
    OPTION_REAL("epsilon-high", 0, &o.epsilon_high, -1, 1e6, "upper clip range; -1: as epsilon, or the loss's default"),
    OPTION_REAL("delta", 0, &o.delta, 0, 1e6, "upper bound of the ratio where the advantage is negative; 0: none"),
    OPTION_REAL("beta", 0, &o.beta, 0, 1e6, "weight of the KL to the reference; 0 loads none"),
    OPTION_CHOICE("kl-estimator", 0, &o.kl, KL_CHOICES, "k3 is GRPO's"),
    OPTION_CHOICE("kl-in", 0, &o.kl_in, "loss|reward", "where the KL term stands"),
    OPTION_FLAG("use-bias-correction-kl", 0, &o.kl_bias_correction, "multiply the KL in the loss by the ratio"),
    OPTION_TEXT("reference", 0, &o.reference, "FILE", "reference model (default: the one of -c)"),
    OPTION_INT("num-iterations", 0, &o.iterations, 1, 1000, "passes over each generation (mu)"),
    OPTION_INT("steps-per-generation", 0, &o.steps_per_generation, 1, 65536, "optimizer steps a pass: mini-batches"),
    OPTION_REAL("entropy-coef", 0, &o.entropy_coef, -10, 10, "weight of the entropy bonus"),
    OPTION_FLAG("use-adaptive-entropy", 0, &o.adaptive_entropy, "steer that weight towards --entropy-target"),
    OPTION_REAL("entropy-target", 0, &o.entropy_target, 0, 100, "nats a token"),
    OPTION_REAL("top-entropy-quantile", 0, &o.top_entropy, 0.001, 1, "train on this share of tokens, the most uncertain"),
    OPTION_REAL("off-policy-mask-threshold", 0, &o.off_policy_mask, 0, 1e6,
                "leave out bad answers that drifted further than this; 0: none"),
    TRAINER_MODEL_OPTIONS(o.t),
    TRAINER_OPTIMIZER_OPTIONS(o.t),
    TRAINER_OUTPUT_OPTIONS(o.t),
    OPTION_GROUP("Evaluation"),
    OPTION_INT("eval-steps", 'v', &o.eval_steps, 1, 1e9, "held-out accuracy every so many generations, and at the ends"),
    OPTION_INT("eval-prompts", 'm', &o.eval_prompts, 0, 1e9, "how many held-out prompts; 0: all"),
    OPTION_INT("eval-samples", 0, &o.eval_samples, 0, 1024, "samples a prompt for pass@k; 0: greedy accuracy only"),
    OPTION_INT("sample-count", 's', &o.sample_count, 0, 256, "completions to show before and after"),
    OPTION_END};

static const OptionAbout about = {
    "-c MODEL -i tasks.shard -o OUT [options]",
    "Improves a model on tasks whose answers can be checked, by GRPO and its refinements.\n\n"
    "  ./data/make_tasks --task add --digits 2 -o tasks.shard\n"
    "  ./train_grpo -c sft.bin -i tasks.shard -o grpo.bin\n"
    "  ./train_grpo -c sft.bin -i tasks.shard -o grpo.bin --loss-type dapo --epsilon-high 0.28 --dynamic-sampling"};

/* The completions of one generation, groups side by side, with all that is known of each token and answer.
 * Tokens of completion i are [offset[i], offset[i+1]) of the per-token arrays. */
typedef struct Generation {
    int32_t groups, completions, capacity; /* completions = groups * G */
    int64_t *prompt;                       /* (groups) index */
    Completion *out;                       /* (completions) */
    uint64_t *id;
    char **text;
    float *parts, *reward, *advantage;     /* (completions, parts), (completions) */
    uint8_t *counts;                       /* (completions) 0: left out of the loss */
    int32_t *offset;                       /* (completions + 1) */
    int32_t tokens, token_capacity;
    float *logp, *old_logp, *ref_logp, *sampler_logp, *entropy, *dlogp, *dentropy;
    uint8_t *keep;
} Generation;

typedef struct Run {
    Trainer t;
    GPT2 reference;
    ModelFile reference_file;
    Workspace work, reference_work;
    Batch batch;
    Rollout engine;
    Sampling sampling;
    Prompts train, val;
    Rewards rewards;
    PolicyLossConfig loss;
    EntropyControl entropy;
    Generation g;
    int64_t *order, epoch, position; /* of the training prompts */
    uint64_t next_id;                /* of the next completion to be sampled */
    double gen_seconds, reward_seconds, resampled;
} Run;

/* ---- 1. sample ------------------------------------------------------------------------------------------------- */

static void order_epoch(Run *r, int64_t epoch) {
    Random random = random_start((uint64_t)o.t.seed, RANDOM_SHUFFLE + (uint64_t)epoch);
    for (int64_t i = 0; i < r->train.count; i++) r->order[i] = i;
    random_shuffle(&random, r->order, r->train.count);
    r->epoch = epoch, r->position = 0;
}

/* Draws G completions to each of the next n prompts, into groups first ... first+n-1. */
static void sample_groups(Run *r, int32_t first, int32_t n) {
    Error e;
    Generation *g = &r->g;
    const int32_t G = (int32_t)o.generations;
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)n, sizeof *q);
    for (int32_t i = 0; i < n; i++) {
        if (r->position == r->train.count) order_epoch(r, r->epoch + 1);
        const int64_t prompt = r->order[r->position++];
        g->prompt[first + i] = prompt;
        q[i] = (RolloutRequest){.prompt = prompts_tokens(&r->train, prompt),
                                .prompt_len = prompts_length(&r->train, prompt),
                                .samples = G, .id = r->next_id, .out = &g->out[(first + i) * G]};
        for (int32_t k = 0; k < G; k++) g->id[(first + i) * G + k] = r->next_id++;
    }
    if (!rollout_run(&r->engine, &r->sampling, q, n, NULL, NULL, &e)) die("%s: %s", o.input, e.text);
    free(q);
}

/* ---- 2. score -------------------------------------------------------------------------------------------------- */

static void score_groups(Run *r, int32_t first, int32_t n) {
    Error e;
    Generation *g = &r->g;
    const int32_t G = (int32_t)o.generations, begin = first * G, count = n * G;
    RewardInput *in = (RewardInput *)xcalloc((size_t)count, sizeof *in);
    for (int32_t i = 0; i < count; i++) {
        const Completion *c = &g->out[begin + i];
        g->text[begin + i] = model_text_decode(&r->t.text, c->tokens, c->count, false);
        in[i] = prompts_input(&r->train, g->prompt[(begin + i) / G], g->text[begin + i], c, g->id[begin + i],
                              (int32_t)o.max_completion);
    }
    if (!rewards_score(&r->rewards, in, count, g->parts + (size_t)begin * (size_t)r->rewards.count, g->reward + begin, &e))
        die("%s", e.text);
    free(in);
}

static void forget_completion(Generation *g, int32_t i) {
    completion_free(&g->out[i]);
    free(g->text[i]);
    g->text[i] = NULL;
}

/* Moves group `from` into the place of group `to`, whose contents are freed. */
static void move_group(Run *r, int32_t to, int32_t from) {
    Generation *g = &r->g;
    const int32_t G = (int32_t)o.generations;
    const size_t K = (size_t)r->rewards.count;
    for (int32_t k = 0; k < G; k++) {
        const int32_t a = to * G + k, b = from * G + k;
        forget_completion(g, a);
        if (a == b) continue;
        g->out[a] = g->out[b], g->text[a] = g->text[b], g->id[a] = g->id[b], g->reward[a] = g->reward[b];
        memcpy(g->parts + (size_t)a * K, g->parts + (size_t)b * K, K * sizeof *g->parts);
        g->out[b] = (Completion){0}, g->text[b] = NULL;
    }
    g->prompt[to] = g->prompt[from];
}

static bool group_differs(const Run *r, int32_t group) {
    return advantage_group_differs(r->g.reward + group * (int32_t)o.generations, o.generations);
}

/* P groups of scored completions. Dynamic sampling (DAPO, sec. 3.2) replaces those whose rewards do not differ, for they
 * have no gradient; what is left of them after --max-resamples rounds stays. */
static void generate(Run *r) {
    const int32_t P = (int32_t)o.prompts;
    const double start = program_seconds();
    r->reward_seconds = 0, r->resampled = 0;
    r->g.groups = P, r->g.completions = P * (int32_t)o.generations;
    for (int32_t kept = 0, round = 0;; round++) {
        const int32_t n = P - kept;
        sample_groups(r, kept, n);
        const double scoring = program_seconds();
        score_groups(r, kept, n);
        r->reward_seconds += program_seconds() - scoring;
        if (!o.dynamic_sampling) break;
        int32_t good = kept;
        for (int32_t i = kept; i < P; i++)
            if (group_differs(r, i)) {
                if (i != good) {
                    /* swap, so that a group without spread stays available where the rounds run out */
                    Generation *g = &r->g;
                    const int32_t G = (int32_t)o.generations;
                    const size_t K = (size_t)r->rewards.count;
                    for (int32_t k = 0; k < G; k++) {
                        const int32_t a = good * G + k, b = i * G + k;
                        const Completion c = g->out[a];
                        char *text = g->text[a];
                        const uint64_t id = g->id[a];
                        const float reward = g->reward[a];
                        g->out[a] = g->out[b], g->text[a] = g->text[b], g->id[a] = g->id[b], g->reward[a] = g->reward[b];
                        g->out[b] = c, g->text[b] = text, g->id[b] = id, g->reward[b] = reward;
                        for (size_t part = 0; part < K; part++) {
                            const float held = g->parts[(size_t)a * K + part];
                            g->parts[(size_t)a * K + part] = g->parts[(size_t)b * K + part];
                            g->parts[(size_t)b * K + part] = held;
                        }
                    }
                    const int64_t prompt = g->prompt[good];
                    g->prompt[good] = g->prompt[i], g->prompt[i] = prompt;
                }
                good++;
            }
        kept = good;
        if (kept == P || round == o.resample) break;
        r->resampled += P - kept;
        for (int32_t i = kept * (int32_t)o.generations; i < r->g.completions; i++) forget_completion(&r->g, i);
    }
    r->gen_seconds = program_seconds() - start - r->reward_seconds;
}
