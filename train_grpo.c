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
#include "llmc/reference.h"

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
    OPTION_TEXT("reward", 'w', &o.reward, "SPEC",
                "parts and weights, as verify:1,format=hash:0.1; see llmc/rewards.h (default verify, or the program)"),
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
    OPTION_FLAG("use-bias-correction-kl", 0, &o.kl_bias_correction, "do not multiply the KL in the loss by the ratio"),
    OPTION_TEXT("reference", 0, &o.reference, "FILE", "reference model (default: the one of -c)"),
    OPTION_INT("num-iterations", 0, &o.iterations, 1, 1000, "passes over each generation (mu)"),
    OPTION_INT("steps-per-generation", 0, &o.steps_per_generation, 1, 65536, "optimizer steps a pass: mini-batches"),
    OPTION_REAL("entropy-coef", 0, &o.entropy_coef, -10, 10, "weight of the entropy bonus"),
    OPTION_FLAG("use-adaptive-entropy", 0, &o.adaptive_entropy, "steer that weight towards --entropy-target"),
    OPTION_REAL("entropy-target", 0, &o.entropy_target, 0, 100, "nats a token"),
    OPTION_REAL("top-entropy-quantile", 0, &o.top_entropy, 0.001, 1,
                "train on this share of tokens, the most uncertain"),
    OPTION_REAL("off-policy-mask-threshold", 0, &o.off_policy_mask, 0, 1e6,
                "leave out bad answers that drifted further than this; 0: none"),
    TRAINER_MODEL_OPTIONS(o.t),
    TRAINER_OPTIMIZER_OPTIONS(o.t),
    TRAINER_OUTPUT_OPTIONS(o.t),
    OPTION_GROUP("Evaluation"),
    OPTION_INT("eval-steps", 'v', &o.eval_steps, 1, 1e9,
               "held-out accuracy every so many generations, and at the ends"),
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

/* One completion with all that is known of it. */
typedef struct Answer {
    Completion completion;
    char *text;
    int64_t prompt; /* index */
    uint64_t id;
    float reward, parts[REWARDS_MAX];
} Answer;

/* One generation: P groups of G answers side by side; and, flat, their tokens: those of answer i are
 * [offset[i], offset[i+1]) of the per-token arrays. */
typedef struct Generation {
    int32_t answers; /* P * G */
    Answer *answer;
    float *reward, *advantage;
    uint8_t *counts; /* (answers) 0: left out of the loss */
    int32_t *offset; /* (answers + 1) */
    float *logp, *old_logp, *ref_logp, *sampler_logp, *entropy, *dlogp, *dentropy;
    uint8_t *keep;
    double gen_seconds, reward_seconds;
    int64_t resampled; /* groups thrown away by dynamic sampling */
} Generation;

typedef struct Run {
    Trainer t;
    Reference reference;
    Workspace work;
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
    const int32_t G = (int32_t)o.generations;
    Answer *answer = r->g.answer + first * G;
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)n, sizeof *q);
    Completion *out = (Completion *)xcalloc((size_t)n * (size_t)G, sizeof *out);
    for (int32_t i = 0; i < n; i++) {
        if (r->position == r->train.count) order_epoch(r, r->epoch + 1);
        const int64_t prompt = r->order[r->position++];
        q[i] = (RolloutRequest){.prompt = prompts_tokens(&r->train, prompt),
                                .prompt_len = prompts_length(&r->train, prompt),
                                .samples = G,
                                .id = r->next_id,
                                .out = out + i * G};
        for (int32_t k = 0; k < G; k++) answer[i * G + k] = (Answer){.prompt = prompt, .id = r->next_id++};
    }
    if (!rollout_run(&r->engine, &r->sampling, q, n, NULL, NULL, &e)) die("%s: %s", o.input, e.text);
    for (int32_t i = 0; i < n * G; i++) answer[i].completion = out[i];
    free(q), free(out);
}

/* ---- 2. score -------------------------------------------------------------------------------------------------- */

static void score_groups(Run *r, int32_t first, int32_t n) {
    Error e;
    const int32_t G = (int32_t)o.generations, count = n * G;
    const size_t K = (size_t)r->rewards.count;
    Answer *answer = r->g.answer + first * G;
    RewardInput *in = (RewardInput *)xcalloc((size_t)count, sizeof *in);
    float *parts = (float *)xcalloc((size_t)count * (K + 1), sizeof *parts), *total = parts + (size_t)count * K;
    for (int32_t i = 0; i < count; i++) {
        const Completion *c = &answer[i].completion;
        answer[i].text = model_text_decode(&r->t.text, c->tokens, c->count, false);
        in[i] = prompts_input(&r->train, answer[i].prompt, answer[i].text, c, answer[i].id, (int32_t)o.max_completion);
    }
    if (!rewards_score(&r->rewards, in, count, parts, total, &e)) die("%s", e.text);
    for (int32_t i = 0; i < count; i++) {
        answer[i].reward = total[i];
        memcpy(answer[i].parts, parts + (size_t)i * K, K * sizeof *parts);
    }
    free(in), free(parts);
}

static void forget_answers(Generation *g, int32_t first) {
    for (int32_t i = first; i < g->answers; i++) {
        completion_free(&g->answer[i].completion);
        free(g->answer[i].text);
        g->answer[i] = (Answer){0};
    }
}

static void swap_groups(Generation *g, int32_t a, int32_t b) {
    const int32_t G = (int32_t)o.generations;
    for (int32_t k = 0; k < G; k++) {
        const Answer held = g->answer[a * G + k];
        g->answer[a * G + k] = g->answer[b * G + k], g->answer[b * G + k] = held;
    }
}

static bool group_differs(const Generation *g, int32_t group) {
    const int32_t G = (int32_t)o.generations;
    float reward[G];
    for (int32_t k = 0; k < G; k++) reward[k] = g->answer[group * G + k].reward;
    return advantage_group_differs(reward, G);
}

/* P groups of scored answers. Dynamic sampling (DAPO, sec. 3.2) replaces those whose rewards do not differ, for they have
 * no gradient; those of the last round stay. */
static void generate(Run *r) {
    Generation *g = &r->g;
    const int32_t P = (int32_t)o.prompts, G = (int32_t)o.generations;
    const double start = program_seconds();
    g->answers = P * G, g->reward_seconds = 0, g->resampled = 0;
    for (int32_t kept = 0, round = 0;; round++) {
        sample_groups(r, kept, P - kept);
        const double scoring = program_seconds();
        score_groups(r, kept, P - kept);
        g->reward_seconds += program_seconds() - scoring;
        if (!o.dynamic_sampling) break;
        for (int32_t i = kept; i < P; i++)
            if (group_differs(g, i)) swap_groups(g, i, kept++);
        if (kept == P || round == o.resample) break;
        g->resampled += P - kept;
        forget_answers(g, kept * G);
    }
    g->gen_seconds = program_seconds() - start - g->reward_seconds;
}

/* ---- 3. compare ------------------------------------------------------------------------------------------------ */

/* Groups in a random order (mini-batches are cut from it), then the flat arrays. */
static void flatten(Run *r) {
    Generation *g = &r->g;
    const int32_t G = (int32_t)o.generations, P = g->answers / G;
    Random random = random_start((uint64_t)o.t.seed, RANDOM_SHUFFLE + (1ull << 48) + (uint64_t)r->t.step);
    for (int32_t i = P - 1; i > 0; i--) swap_groups(g, i, (int32_t)random_below(&random, (uint64_t)i + 1));
    g->offset[0] = 0;
    for (int32_t i = 0; i < g->answers; i++) {
        const Completion *c = &g->answer[i].completion;
        g->offset[i + 1] = g->offset[i] + c->count;
        g->counts[i] = c->finished || !o.mask_truncated;
        g->reward[i] = g->answer[i].reward;
        memcpy(g->sampler_logp + g->offset[i], c->logp, (size_t)c->count * sizeof(float));
    }
}

static AdvantageStats compare(Run *r) {
    Generation *g = &r->g;
    AdvantageStats stats;
    const int64_t G = o.generations, P = g->answers / G;
    if (o.aggregation) {
        const int64_t K = r->rewards.count;
        float *parts = (float *)xmalloc((size_t)(g->answers * K) * sizeof *parts);
        for (int32_t i = 0; i < g->answers; i++) memcpy(parts + i * K, g->answer[i].parts, (size_t)K * sizeof *parts);
        advantage_gdpo(parts, r->rewards.weight, P, G, K, g->advantage, &stats);
        free(parts);
    } else if (o.loss == POLICY_RLOO) advantage_rloo(g->reward, P, G, false, g->advantage, &stats);
    else advantage_group(g->reward, P, G, (ScaleRewards)o.scale, g->advantage, &stats);
    return stats;
}

/* ---- 4. improve ------------------------------------------------------------------------------------------------ */

/* Packs answers from `first` on, before `end`, into the batch, each group on one copy of its prompt. Returns one past the
 * last that went in. */
static int32_t pack(Run *r, int32_t first, int32_t end) {
    Batch *b = &r->batch;
    int64_t prompt = -1;
    int segment = -1;
    batch_clear(b);
    for (int32_t i = first; i < end; i++) {
        const Answer *a = &r->g.answer[i];
        const bool same = a->prompt == prompt && i % o.generations;
        const int32_t n = prompts_length(&r->train, a->prompt), count = a->completion.count;
        if (!batch_fits(b, count - 1 + (same ? 0 : n), count, 2)) return i;
        if (!same) segment = batch_segment(b, prompts_tokens(&r->train, a->prompt), n, 0, -1);
        prompt = a->prompt;
        batch_completion(b, segment, a->completion.tokens, count);
    }
    return end;
}

/* Log-probabilities, and entropies where wanted, of answers [first, end) under a model, into flat arrays. */
static void score_tokens(Run *r, const GPT2 *m, const Workspace *w, int32_t first, int32_t end, float *logp,
                         float *entropy) {
    for (int32_t i = first, next; i < end; i = next) {
        next = pack(r, i, end);
        const int32_t at = r->g.offset[i];
        const GPT2Output out = {.logp = logp + at, .entropy = entropy ? entropy + at : NULL};
        gpt2_forward(m, w, &r->batch, (float)o.temperature, &out);
        r->t.flops += gpt2_flops(&m->config, r->batch.rows, r->batch.targets, batch_pairs(&r->batch));
    }
}

/* One optimizer step on answers [first, end). */
static double improve(Run *r, int32_t first, int32_t end, bool on_policy, PolicyStats *stats) {
    Trainer *t = &r->t;
    Generation *g = &r->g;
    PolicyLossConfig c = r->loss;
    if (o.kl_in) c.beta = 0; /* it is in the reward */
    if (o.adaptive_entropy) c.entropy_coef = entropy_control_coef(&r->entropy);
    const uint8_t *keep = NULL;
    if (o.top_entropy < 1) {
        score_tokens(r, &t->model, &r->work, first, end, g->logp, g->entropy);
        policy_entropy_keep(g->entropy, g->offset + first, end - first, g->counts + first, o.top_entropy, g->keep);
        keep = g->keep;
    }
    PolicyNormaliser n = policy_normaliser(g->offset + first, end - first, g->counts + first, keep);
    const PolicyNormaliser all = policy_normaliser(g->offset, g->answers, g->counts, NULL);
    n.window_tokens = all.tokens / (double)o.steps_per_generation;
    double loss = 0;
    for (int32_t i = first, next; i < end; i = next) {
        next = pack(r, i, end);
        const GPT2Output out = {.logp = g->logp + g->offset[i], .entropy = g->entropy + g->offset[i]};
        gpt2_forward(&t->model, &r->work, &r->batch, (float)o.temperature, &out);
        const PolicyBatch b = {.sequences = next - i,
                               .offset = g->offset + i,
                               .advantage = g->advantage + i,
                               .mask = g->counts + i,
                               .logp = g->logp,
                               .old_logp = on_policy ? NULL : g->old_logp,
                               .ref_logp = c.beta > 0 ? g->ref_logp : NULL,
                               .sampler_logp = g->sampler_logp,
                               .entropy = g->entropy,
                               .keep = keep};
        loss += policy_loss(&c, &n, &b, g->dlogp, g->dentropy, stats);
        gpt2_backward(&t->model, &r->work, &r->batch, (float)o.temperature, g->dlogp + g->offset[i],
                      c.entropy_coef != 0 ? g->dentropy + g->offset[i] : NULL, NULL);
        t->flops += 3 * gpt2_flops(&t->model.config, r->batch.rows, r->batch.targets, batch_pairs(&r->batch));
        t->tokens += r->batch.rows;
    }
    trainer_update(t, loss);
    if (o.adaptive_entropy && stats->tokens > 0) entropy_control_update(&r->entropy, stats->entropy / stats->tokens);
    return loss;
}

/* ---- evaluation and logging ------------------------------------------------------------------------------------ */

static Evaluation evaluate(Run *r, const char *when) {
    Error e;
    Evaluation v = {.samples = (int)o.eval_samples};
    Sampling how = r->sampling;
    how.stream = RANDOM_EVAL;
    const double start = program_seconds();
    const int64_t count = o.eval_prompts && o.eval_prompts < r->val.count ? o.eval_prompts : r->val.count;
    if (!evaluate_tasks(&v, &r->engine, &how, &r->val, 0, count, &r->t.text, NULL, NULL, NULL, &e))
        die("%s: %s", o.val, e.text);
    Metrics *m = &r->t.metrics;
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

/* Greedy completions of the first held-out (or training) prompts. */
static void show_samples(Run *r, const char *when) {
    Error e;
    const Prompts *p = o.val ? &r->val : &r->train;
    Sampling how = r->sampling;
    how.temperature = 0;
    for (int64_t i = 0; i < p->count && i < o.sample_count; i++) {
        Completion c;
        RolloutRequest q = {
            .prompt = prompts_tokens(p, i), .prompt_len = prompts_length(p, i), .samples = 1, .out = &c};
        if (!rollout_run(&r->engine, &how, &q, 1, NULL, NULL, &e)) die("%s", e.text);
        char *text = model_text_decode(&r->t.text, c.tokens, c.count, false);
        const RewardInput in = prompts_input(p, i, text, &c, 0, how.max_new);
        const double right = evaluation_check(&in);
        metrics_line(&r->t.metrics, "%-6s %s%s%s", when, p->what[i].text, text,
                     isnan(right)  ? ""
                     : right > 0.5 ? "  (right)"
                                   : "  (wrong)");
        metrics_sample(&r->t.metrics, when, p->what[i].text, text, p->what[i].answer, right);
        free(text), completion_free(&c);
    }
}

/* TRL's metrics of a generation. */
static void log_generation(Run *r, const AdvantageStats *a) {
    const Generation *g = &r->g;
    Metrics *m = &r->t.metrics;
    char key[128];
    metrics_set(m, "reward", a->reward);
    metrics_set(m, "reward_std", a->reward_std);
    metrics_set(m, "frac_reward_zero_std", a->frac_reward_zero_std);
    float *part = (float *)xmalloc((size_t)g->answers * sizeof *part);
    for (int k = 0; k < r->rewards.count; k++) {
        for (int32_t i = 0; i < g->answers; i++) part[i] = g->answer[i].parts[k];
        const Spread s = spread_of(part, g->answers, 1);
        snprintf(key, sizeof key, "rewards/%s/mean", r->rewards.name[k]);
        metrics_set(m, key, s.mean);
        snprintf(key, sizeof key, "rewards/%s/std", r->rewards.name[k]);
        metrics_set(m, key, s.std);
    }
    free(part);
    double sum[2] = {0}, least[2] = {INFINITY, INFINITY}, most[2] = {-INFINITY, -INFINITY}, count[2] = {0};
    for (int32_t i = 0; i < g->answers; i++)
        for (int ended = 0; ended < 2; ended++) {
            const Completion *c = &g->answer[i].completion;
            if (ended && !c->finished) continue;
            sum[ended] += c->count, count[ended]++;
            least[ended] = fmin(least[ended], c->count), most[ended] = fmax(most[ended], c->count);
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
    if (o.dynamic_sampling) metrics_set(m, "dynamic_sampling/resampled_groups", (double)g->resampled);
    metrics_set(m, "epoch", (double)r->epoch + (double)r->position / (double)r->train.count);
    /* guard rails: said each time, for each of them means that nothing can be learned */
    if (count[1] == 0)
        metrics_line(m, "train_grpo: warning: no completion ended within %lld tokens", (long long)o.max_completion);
    if (a->frac_reward_zero_std == 1)
        metrics_line(m, "train_grpo: warning: the rewards of every group are all equal: no gradient");
    if (isnan(a->reward)) metrics_line(m, "train_grpo: warning: no completion could be scored");
}

static void log_policy(Run *r, const PolicyStats *stats) {
    PolicyMetric metric[POLICY_METRICS];
    const int n = policy_metrics(&r->loss, stats, metric);
    for (int i = 0; i < n; i++) metrics_set(&r->t.metrics, metric[i].name, metric[i].value);
    if (o.adaptive_entropy) metrics_set(&r->t.metrics, "entropy_coef", r->entropy.coef);
    /* with truncated sampling or a penalty the sampler's own distribution differs by design, not its logp */
    const double limit = o.t.dtype ? 0.5 : 0.01;
    if (stats->sampler_gap_max > limit && o.steps_per_generation * o.iterations == 1)
        metrics_line(&r->t.metrics, "train_grpo: warning: sampler and trainer disagree by %.3g nats on a token",
                     stats->sampler_gap_max);
}

/* ---- the run --------------------------------------------------------------------------------------------------- */

static void open_prompts(Run *r) {
    Error e;
    const int32_t context = r->t.model.config.context;
    const int32_t limit = o.max_prompt < context - 1 ? (int32_t)o.max_prompt : context - 1;
    if (!prompts_read(&r->train, limit, &e)) die("%s", e.text);
    if (r->train.dropped)
        warn("%s: %lld prompts are longer than %d tokens and are left out", o.input, (long long)r->train.dropped,
             limit);
    if (o.val) {
        if (!shard_open(&r->val.shard, o.val, &e)) die("%s", e.text);
        trainer_check_shard(&r->t, &r->val.shard);
        if (!prompts_read(&r->val, limit, &e)) die("%s", e.text);
    }
    if (r->t.text.stop < 0) warn("the model carries no tokenizer: completions end at --max-completion-length only");
}

/* The loss's own defaults, where the command line does not say otherwise. */
static PolicyLossConfig loss_options(void) {
    PolicyLossConfig c = policy_loss_config((PolicyLossKind)o.loss);
    if (o.importance == IMPORTANCE_SEQUENCE) c.importance = IMPORTANCE_SEQUENCE;
    if (o.epsilon >= 0) {
        c.epsilon = o.epsilon;
        if (o.loss != POLICY_CISPO) c.epsilon_high = o.epsilon;
    }
    if (o.epsilon_high >= 0) c.epsilon_high = o.epsilon_high;
    c.delta = o.delta, c.beta = o.beta, c.kl = (KlEstimator)o.kl, c.kl_bias_correction = o.kl_bias_correction;
    c.entropy_coef = o.entropy_coef, c.off_policy_mask = o.off_policy_mask;
    c.max_completion_length = (double)o.max_completion;
    return c;
}

static void open_generation(Run *r) {
    Generation *g = &r->g;
    const size_t n = (size_t)(o.prompts * o.generations), tokens = n * (size_t)o.max_completion;
    g->answer = (Answer *)xcalloc(n, sizeof *g->answer);
    g->reward = (float *)xcalloc(n, sizeof(float)), g->advantage = (float *)xcalloc(n, sizeof(float));
    g->counts = (uint8_t *)xcalloc(n, 1), g->offset = (int32_t *)xcalloc(n + 1, sizeof(int32_t));
    float **arrays[] = {&g->logp, &g->old_logp, &g->ref_logp, &g->sampler_logp, &g->entropy, &g->dlogp, &g->dentropy};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) *arrays[i] = (float *)xcalloc(tokens, sizeof(float));
    g->keep = (uint8_t *)xcalloc(tokens, 1);
}

static void close_generation(Generation *g) {
    free(g->answer), free(g->reward), free(g->advantage), free(g->counts), free(g->offset), free(g->keep);
    free(g->logp), free(g->old_logp), free(g->ref_logp), free(g->sampler_logp), free(g->entropy);
    free(g->dlogp), free(g->dentropy);
}

static void save_counters(Run *r) {
    json_object_set_new(r->t.state, "epoch", json_integer(r->epoch));
    json_object_set_new(r->t.state, "position", json_integer(r->position));
    json_object_set_new(r->t.state, "next_id", json_integer((json_int_t)r->next_id));
    json_object_set_new(r->t.state, "entropy_coef", json_real(r->entropy.coef));
    if (isfinite(r->entropy.last)) json_object_set_new(r->t.state, "entropy_last", json_real(r->entropy.last));
}

static void load_counters(Run *r) {
    const json_t *s = r->t.state;
    order_epoch(r, state_int(s, "epoch"));
    r->position = state_int(s, "position");
    if (r->position > r->train.count) die("%s: the state was made with another --max-prompt-length", o.t.resume);
    r->next_id = (uint64_t)state_int(s, "next_id");
    if (!r->t.step) return;
    r->entropy.coef = state_real(s, "entropy_coef");
    if (json_object_get(s, "entropy_last")) r->entropy.last = state_real(s, "entropy_last");
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    Trainer *t = &r->t;
    Error e;
    o.t = trainer_defaults(1e-6);
    o.max_prompt = 512, o.epochs = 1, o.prompts = 8, o.generations = 8, o.max_completion = 512, o.temperature = 1;
    o.top_p = 1, o.repetition_penalty = 1, o.slots = 64, o.resample = 10, o.reward_timeout = 60;
    o.epsilon = o.epsilon_high = -1, o.loss = POLICY_DAPO, o.kl = KL_K3, o.kl_bias_correction = true;
    o.iterations = o.steps_per_generation = 1, o.entropy_target = 0.2, o.top_entropy = 1;
    o.eval_steps = 50, o.sample_count = 3;
    if (options_parse(options, &about, argc, argv) < argc) usage_error("%s: unexpected word", argv[argc - 1]);
    if (!o.reward) o.reward = o.reward_cmd ? "command" : "verify";
    if (!o.input) usage_error("-i/--input: which shard?");
    if (!o.t.output) usage_error("-o/--output: where to?");
    if (o.prompts % o.steps_per_generation)
        usage_error("--steps-per-generation: %lld does not divide the %lld prompts of a generation",
                    (long long)o.steps_per_generation, (long long)o.prompts);
    if (o.kl_in && o.beta == 0) usage_error("--kl-in reward: --beta is 0");
    program_start();
    const char *inputs[] = {o.input, o.val, o.t.checkpoint, o.t.resume, o.reference};
    trainer_check_files(&o.t, inputs, 5, NULL);

    if (!rewards_open(&r->rewards, o.reward, o.reward_cmd, o.reward_timeout, (uint64_t)o.t.seed,
                      (int32_t)o.max_completion, &e))
        usage_error("%s", e.text);
    if (!shard_open(&r->train.shard, o.input, &e)) die("%s", e.text);
    trainer_open(t, "train_grpo", &o.t, &r->train.shard, false);
    open_prompts(r);
    r->loss = loss_options();
    r->entropy = entropy_control(o.entropy_coef);
    r->entropy.target = o.entropy_target;
    const int32_t prompt_max = r->train.longest > r->val.longest ? r->train.longest : r->val.longest;
    const int new_max = (int)o.max_completion, need = prompt_max + new_max;
    const int rows = o.t.micro_tokens > need ? (int)o.t.micro_tokens : need;
    const int64_t group = o.generations > o.eval_samples ? o.generations : o.eval_samples;
    const int slots = (int)o.slots;
    if (group > rollout_rows(slots, prompt_max) - slots)
        die("--num-generations: %lld completions of one prompt, at most %d can be drawn at once", (long long)group,
            rollout_rows(slots, prompt_max) - slots);
    const GPT2Config *c = &t->model.config;
    const size_t reference = o.beta > 0 ? reference_bytes(c, t->backend, rows) : 0;
    trainer_announce(t, options, rows, reference + rollout_bytes(c, t->backend, slots, prompt_max, new_max));
    if (!workspace_new(&r->work, &t->model, rows, rows, rows, true, (int)o.t.recompute, &e))
        die("%s; lower --micro-tokens or raise --recompute", e.text);
    if (!rollout_new(&r->engine, &t->model, slots, prompt_max, new_max, &e)) die("%s; lower --slots", e.text);
    if (o.beta > 0) reference_open(&r->reference, t, o.reference, rows, "--beta is not 0");
    r->batch = batch_new(rows, rows, rows);
    open_generation(r);
    r->sampling = (Sampling){.temperature = (float)o.temperature,
                             .top_p = (float)o.top_p,
                             .min_p = (float)o.min_p,
                             .top_k = (int)o.top_k,
                             .repetition_penalty = (float)o.repetition_penalty,
                             .max_new = new_max,
                             .seed = (uint64_t)o.t.seed,
                             .stream = RANDOM_ROLLOUT};
    if (t->text.stop >= 0) r->sampling.stop[r->sampling.stops++] = t->text.stop;

    /* the run: optimizer steps, in generations of iterations * steps_per_generation of them */
    const int64_t steps = o.iterations * o.steps_per_generation;
    const int64_t generations = (int64_t)ceil(o.epochs * (double)r->train.count / (double)o.prompts);
    trainer_schedule(t, o.t.steps ? o.t.steps : generations * steps);
    r->order = (int64_t *)xmalloc((size_t)r->train.count * sizeof *r->order);
    load_counters(r);
    Evaluation before = {0}, after = {0};
    if (!t->step) {
        show_samples(r, "before");
        if (o.val) before = evaluate(r, "before");
    }

    bool stopped = false;
    for (int64_t generation = t->step / steps; t->step < t->o.steps && !stopped; generation++) {
        const int64_t first = t->step;
        trainer_begin_step(t);
        generate(r);
        flatten(r);
        const int32_t n = r->g.answers;
        const bool on_policy = steps == 1;
        if (!on_policy) score_tokens(r, &t->model, &r->work, 0, n, r->g.old_logp, NULL);
        if (o.beta > 0) score_tokens(r, &r->reference.model, &r->reference.work, 0, n, r->g.ref_logp, NULL);
        if (o.beta > 0 && o.kl_in) {
            const double kl = kl_from_rewards((KlEstimator)o.kl, r->g.sampler_logp, r->g.ref_logp, r->g.offset, n,
                                              o.beta, r->g.reward);
            metrics_set(&t->metrics, "kl", kl / r->g.offset[n]);
        }
        const AdvantageStats advantages = compare(r);
        for (int64_t i = 0; i < steps && t->step < t->o.steps; i++) {
            const int32_t size = n / (int32_t)o.steps_per_generation, at = (int32_t)(i % o.steps_per_generation) * size;
            PolicyStats stats = policy_stats();
            if (i) trainer_begin_step(t);
            const double start = program_seconds();
            const double loss = improve(r, at, at + size, on_policy, &stats);
            metrics_set(&t->metrics, "timing_s/update", program_seconds() - start);
            if (!i) log_generation(r, &advantages);
            log_policy(r, &stats);
            const bool last = t->step == t->o.steps;
            if (o.val && (last || (i == steps - 1 && (generation + 1) % o.eval_steps == 0))) {
                char when[32];
                snprintf(when, sizeof when, "step %lld", (long long)t->step);
                after = evaluate(r, when);
            }
            trainer_log(t, loss, "reward %.3f | length %.1f | entropy %.3f | %.0f tok/s", advantages.reward,
                        (double)r->g.offset[n] / n, stats.has_entropy ? stats.entropy / fmax(stats.tokens, 1) : 0,
                        r->g.offset[n] / (r->g.gen_seconds + 1e-9));
        }
        forget_answers(&r->g, 0);
        save_counters(r);
        stopped = trainer_should_stop(t, t->step - first);
    }
    if (!stopped) {
        show_samples(r, "after");
        if (o.val && before.prompts) {
            char a[32], b[32];
            snprintf(a, sizeof a, "%.1f %%", 100 * before.greedy), snprintf(b, sizeof b, "%.1f %%", 100 * after.greedy);
            metrics_final(&t->metrics, "Held-out greedy accuracy", a, b);
            metrics_line(&t->metrics, "held-out greedy accuracy: %s before, %s after", a, b);
            for (int k = 0; k < after.ks; k++) {
                char name[32];
                snprintf(name, sizeof name, "Held-out pass@%d", after.k[k]);
                snprintf(a, sizeof a, "%.1f %%", 100 * before.pass[k]),
                    snprintf(b, sizeof b, "%.1f %%", 100 * after.pass[k]);
                metrics_final(&t->metrics, name, a, b);
            }
        }
    }
    rewards_close(&r->rewards);
    close_generation(&r->g);
    rollout_free(&r->engine);
    workspace_free(&r->work, &t->model);
    batch_free(&r->batch);
    if (o.beta > 0) reference_close(&r->reference);
    trainer_close(t, stopped);
    prompts_close(&r->train);
    if (o.val) prompts_close(&r->val);
    free(r->order);
    return 0;
}
