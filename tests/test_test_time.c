/* test_test_time.c - test-time compute: budget forcing against a reference that knows nothing of the engine, and against
 * plain samples. Needs ./generate and ./evaluate. */
#include "../llmc/base/error.h"             /* Error, xcalloc, xstrdup */
#include "../llmc/base/random.h"            /* Random, random_start, RANDOM_SEARCH, random_below, ... */
#include "../llmc/base/text.h"              /* token_list_append, token_list_free */
#include "../llmc/cpu/cpu.h"                /* backend_cpu */
#include "../llmc/evaluate/compute_curve.h" /* curve_count, ComputeCurve, curve_flops */
#include "../llmc/model/backend.h"          /* Draw */
#include "../llmc/model/batch.h"            /* Batch, batch_pairs */
#include "../llmc/model/config.h"           /* ModelConfig, gpt2_config */
#include "../llmc/model/decode.h"           /* DecodeStep, model_decode */
#include "../llmc/model/model.h"            /* Model, model_free, model_new */
#include "../llmc/model/model_file.h"       /* model_save */
#include "../llmc/model/model_load.h"       /* ModelFile, model_file_free */
#include "../llmc/model/model_text.h"       /* ModelText */
#include "../llmc/model/pack.h"             /* batch_free, batch_new, batch_segment, batch_target */
#include "../llmc/model/tensors.h"          /* INIT_ONE, TENSOR_COUNT, TENSOR_valuew */
#include "../llmc/model/transformer.h"      /* ModelOutput, model_flops, model_forward, model_logits */
#include "../llmc/model/workspace.h"        /* Workspace, workspace_free, workspace_new, KVCache */
#include "../llmc/records/shard.h"          /* RECORD_PROMPT, ShardWriter */
#include "../llmc/reward/reward_model.h"    /* PRM_LAST, PRM_MIN, PrmAggregation, PRM_PRODUCT, ... */
#include "../llmc/rollout/ablation.h"       /* Ablation, ablation_add, ablation_close, ablation_open */
#include "../llmc/rollout/beam_search.h"    /* beam_path, beam_tree_free, SEARCH_DVTS, BeamKind, ... */
#include "../llmc/rollout/certainty.h"      /* Certainty, certainty_close, certainty_open, certainty_score */
#include "../llmc/rollout/evaluation.h"     /* EvaluationSample */
#include "../llmc/rollout/rollout.h"        /* Sampling, RolloutRequest, Completion, Rollout, ... */
#include "../llmc/rollout/thinking.h"       /* ThinkingOptions, THINKING_INFINITE, Thinking, thinking_budgets, ... */
#include "../llmc/rollout/trajectory.h"     /* trajectory_free, trajectory_new */
#include "../llmc/text/tokenizer.h"         /* tokenizer_store */
#include "files.h"                          /* files_path, text_of */
#include "models.h"                         /* refused, assert_near, MODELS_VOCAB, models_random, ... */
#include "shell.h"                          /* assert_holds, run, put */

enum { CONTEXT = 120, PROMPT = 5, NEW = 100, REQUESTS = 6, SAMPLES = 3, ALL = REQUESTS * SAMPLES };

/* ---- a reference ----------------------------------------------------------------------------------------------- */

/* The logits after n tokens, from an uncached pass over all of them. */
static const float *last_logits(const Model *m, const int32_t *ids, int n) {
    static float z[MODELS_VOCAB];
    Error e;
    Workspace w;
    Batch b = batch_new(n, 1, 1);
    if (!workspace_new(&w, m, n, 1, 1, false, 0, &e)) fail_msg("%s", e.text);
    batch_segment(&b, ids, n, 0, -1);
    batch_target(&b, n - 1, 0);
    if (!model_logits(m, &w, &b, z, &e)) fail_msg("%s", e.text);
    workspace_free(&w, m), batch_free(&b);
    return z;
}

/* Whether the reference came to a decision that the rounding of another processor could change: a random number next to the
 * border of two tokens, or two scores that are nearly equal. Such a case is not compared. */
static bool close_call;

enum { TOP_K = 5 };

/* The token at which the cumulative distribution over the TOP_K likeliest after n tokens exceeds the uniform number of (stream,
 * index), in double; the likeliest one at temperature 0. */
static int32_t draw(const Model *m, const int32_t *ids, int n, double temperature, uint64_t seed, uint64_t stream,
                    uint64_t index) {
    const float *z = last_logits(m, ids, n);
    const double u = random_uniform(seed, stream, index);
    bool kept[MODELS_VOCAB] = {false};
    double sum = 0, below = 0, lowest = INFINITY;
    for (int k = 0; k < (temperature == 0 ? 1 : TOP_K); k++) {
        int best = -1;
        for (int v = 0; v < MODELS_VOCAB; v++)
            if (!kept[v] && (best < 0 || z[v] > z[best])) best = v;
        kept[best] = true;
        lowest = z[best];
    }
    for (int v = 0; v < MODELS_VOCAB; v++) close_call = close_call || (!kept[v] && lowest - z[v] < 1e-4);
    for (int v = 0; v < MODELS_VOCAB; v++)
        sum += kept[v] ? exp((z[v] - lowest) / (temperature > 0 ? temperature : 1)) : 0;
    int32_t drawn = -1;
    for (int v = 0; v < MODELS_VOCAB; v++) {
        if (!kept[v]) continue;
        below += exp((z[v] - lowest) / (temperature > 0 ? temperature : 1)) / sum;
        close_call = close_call || fabs(below - u) < 1e-5;
        if (drawn < 0 && (below > u || below > 1 - 1e-9)) drawn = v;
    }
    return drawn;
}

typedef struct Forced {
    int32_t ids[CONTEXT];
    uint8_t drawn[CONTEXT];
    int n, thought, waits; /* n, thought: with the prompt */
    bool finished;
} Forced;

static void insert(Forced *f, const char *text) {
    for (; *text; text++) {
        f->drawn[f->n] = 0;
        f->ids[f->n++] = (unsigned char)*text;
    }
}

/* Budget forcing as section 3 of s1 says it, of byte tokens. end: the character that ends thinking; stop: the token that
 * ends everything. */
static void force(const Model *m, const RolloutRequest *q, int sample, const Sampling *s, int budget, int ignore,
                  char end, int32_t stop, int answer, Forced *f) {
    const uint64_t stream = s->stream + q->id + (uint64_t)sample;
    int removed = 0, last = -1;
    char closing[] = {end, '=', 0};
    memcpy(f->ids, q->prompt, (size_t)q->prompt_len * sizeof *f->ids);
    f->n = q->prompt_len;
    while (f->n - q->prompt_len < budget) {
        last = draw(m, f->ids, f->n, s->temperature, s->seed, stream, (uint64_t)(f->n + removed));
        if (last == stop || last == end) {
            if (f->waits == ignore || f->n - q->prompt_len + 2 >= budget) break;
            f->waits++;
            removed++;
            insert(f, "Wt");
        } else {
            f->drawn[f->n] = 1;
            f->ids[f->n++] = last;
        }
        last = -1;
    }
    f->thought = f->n;
    if (last == end) {
        f->drawn[f->n] = 1;
        f->ids[f->n++] = end;
    } else {
        removed += last == stop;
        insert(f, closing);
    }
    for (int k = 0; k < answer && !f->finished; k++) {
        f->drawn[f->n] = 1;
        f->ids[f->n] = draw(m, f->ids, f->n, s->temperature, s->seed, stream, (uint64_t)(f->n + removed));
        f->finished = f->ids[f->n++] == stop;
    }
}

/* ---- the engine ------------------------------------------------------------------------------------------------ */

typedef struct Work {
    int32_t prompt[REQUESTS][PROMPT];
    RolloutRequest request[REQUESTS];
    Completion out[ALL];
} Work;

static void work_prompts(Work *w, int samples) {
    for (int i = 0; i < REQUESTS; i++) {
        for (int k = 0; k < PROMPT; k++) w->prompt[i][k] = 'a' + (7 * i + 3 * k) % 26;
        w->request[i] = (RolloutRequest){.prompt = w->prompt[i],
                                         .prompt_len = PROMPT - i % 3,
                                         .samples = samples,
                                         .id = (uint64_t)(i * samples),
                                         .out = w->out + i * samples};
    }
}

static void work_free(Work *w) {
    for (int i = 0; i < ALL; i++) completion_free(&w->out[i]);
}

static void work_run(const Model *m, int slots, const Sampling *s, const RolloutTurns *turns, Work *w) {
    Error e;
    Rollout r;
    if (!rollout_new(&r, m, slots, PROMPT, CONTEXT, &e)) fail_msg("%s", e.text);
    r.turns = turns;
    if (!rollout_run(&r, s, w->request, REQUESTS, NULL, NULL, &e)) fail_msg("%s", e.text);
    rollout_free(&r);
}

static Sampling sampling(int max_new, int32_t stop) {
    Sampling s = sampling_default();
    s.temperature = 0.8f;
    s.max_new = max_new;
    s.seed = 11;
    s.top_k = TOP_K;
    s.stop[s.stops++] = stop;
    return s;
}

static ModelText text_of_bytes(void) { return (ModelText){.present = true, .tokenizer = models_bytes}; }

static void forced_equals_the_reference(void **state) {
    (void)state;
    Error e;
    Model m = models_random(CONTEXT);
    const ModelText text = text_of_bytes();
    int waits = 0, cut = 0, own = 0;
    static const int settings[][3] = {{80, 0, SAMPLES}, {50, 2, SAMPLES}, {70, 4, 1}, {9, 1, SAMPLES}};
    for (size_t k = 0; k < 4; k++) {
        const int budget = settings[k][0], ignore = settings[k][1], samples = settings[k][2];
        const ThinkingOptions o = {.wait = "Wt", .end = "n", .answer = "=", .ignore = ignore};
        Sampling s = sampling(7, 'e');
        Thinking x;
        Work w = {0}, other = {0};
        if (!thinking_open(&x, &o, budget, &text, &s, CONTEXT, PROMPT, &e)) fail_msg("%s", e.text);
        s.max_new = x.new_max;
        work_prompts(&w, samples);
        work_prompts(&other, samples);
        work_run(&m, 5, &s, &x.turns, &w);
        work_run(&m, 64, &s, &x.turns, &other);
        for (int i = 0; i < REQUESTS * samples; i++) {
            const RolloutRequest *q = &w.request[i / samples];
            const Completion *c = &w.out[i];
            Forced f = {0};
            close_call = false;
            force(&m, q, i % samples, &s, budget, ignore, 'n', 'e', 7, &f);
            if (close_call) continue;
            assert_int_equal(c->count, f.n - q->prompt_len);
            assert_memory_equal(c->tokens, f.ids + q->prompt_len, (size_t)c->count * sizeof(int32_t));
            assert_memory_equal(c->trajectory->drawn, f.drawn + q->prompt_len, (size_t)c->count);
            assert_int_equal(c->trajectory->thought, f.thought - q->prompt_len);
            assert_int_equal(c->trajectory->waits, f.waits);
            assert_int_equal(c->finished, f.finished);
            assert_true(c->trajectory->thought <= budget);
            assert_int_equal(other.out[i].count, c->count);
            assert_memory_equal(other.out[i].tokens, c->tokens, (size_t)c->count * sizeof(int32_t));
            waits += f.waits;
            cut += c->trajectory->thought == budget;
            own += f.drawn[f.thought];
        }
        work_free(&w), work_free(&other), thinking_close(&x);
    }
    if (waits < 10 || cut < 5 || own < 5) fail_msg("%d ends ignored, %d thoughts cut, %d ended", waits, cut, own);
    model_free(&m);
}

/* Without a limit and without ignored ends the completions are the plain ones, to the last bit. */
static void infinite_is_plain(void **state) {
    (void)state;
    Error e;
    Model m = models_random(CONTEXT);
    const ModelText text = text_of_bytes();
    const ThinkingOptions o = {.wait = "Wt", .end = "e", .answer = "="};
    Sampling s = sampling(NEW, 'n');
    s.top_k = 0;
    Thinking x;
    Work plain = {0}, forced = {0};
    int marked = 0;
    work_prompts(&plain, SAMPLES);
    work_prompts(&forced, SAMPLES);
    if (!thinking_open(&x, &o, THINKING_INFINITE, &text, &s, CONTEXT, PROMPT, &e)) fail_msg("%s", e.text);
    work_run(&m, 4, &s, NULL, &plain);
    work_run(&m, 4, &s, &x.turns, &forced);
    for (int i = 0; i < ALL; i++) {
        assert_int_equal(plain.out[i].count, forced.out[i].count);
        assert_int_equal(plain.out[i].finished, forced.out[i].finished);
        assert_memory_equal(plain.out[i].tokens, forced.out[i].tokens, (size_t)plain.out[i].count * sizeof(int32_t));
        assert_memory_equal(plain.out[i].logp, forced.out[i].logp, (size_t)plain.out[i].count * sizeof(float));
        assert_int_equal(completion_drawn(&forced.out[i]), forced.out[i].count);
        marked += forced.out[i].trajectory->thought < forced.out[i].count - 1;
    }
    assert_true(marked > 2);
    work_free(&plain), work_free(&forced), thinking_close(&x), model_free(&m);
}

/* Position p is followed by script[p]: an end of two tokens is removed whole, and is kept when it is not ignored. */
static void an_end_of_several_tokens(void **state) {
    (void)state;
    static const char script[] = "_abc##defg##hij";
    int32_t ids[32];
    for (int i = 0; script[i + 1]; i++) ids[i] = (unsigned char)script[i + 1]; /* the prompt is one token */
    Model m = models_scripted(64, ids, NULL, (int)strlen(script) - 1);
    models_save(&m, "script.bin", false, NULL);
    model_free(&m);
    put("one.jsonl", "{\"prompt\":\"_\"}\n");
#define FORCE "./generate -c $T/script.bin --raw --temperature 0 -i $T/one.jsonl --think-end '##' --think-tokens "
    run(0, FORCE "inf -g 10");
    assert_holds(out, "\"completion\":\"abc##defg##hij\"");
    assert_holds(out, "\"think_tokens\":3,\"ignored_ends\":0,\"drawn\":[15],\"stop\":\"completed\"");
    /* abc, ## removed, "!" is at position 4, after which comes script[5]: #defg## is the rest of the thought */
    run(0, FORCE "30 -g 10 --ignore-end 1 --wait-text '!'");
    assert_holds(out, "\"completion\":\"abc!#defg##hij\"");
    assert_holds(out, "\"think_tokens\":9,\"ignored_ends\":1,\"drawn\":[3,1,11],\"stop\":\"completed\"");
    /* the budget runs out after "ab"; "##=" is at positions 3 to 5, after which comes script[6] */
    run(0, FORCE "2 -g 10 --answer-text '='");
    assert_holds(out, "\"completion\":\"ab##=defg##hij\"");
    assert_holds(out, "\"think_tokens\":2,\"ignored_ends\":0,\"drawn\":[2,3,10],\"stop\":\"completed\"");
    run(0, FORCE "2 -g 8 --answer-text '='");
    assert_holds(out, "\"completion\":\"ab##=defg##hi\"");
    assert_holds(out, "\"finished\":false");
    assert_holds(out, "\"drawn\":[2,3,8],\"stop\":\"max_tokens\"");
#undef FORCE
}

/* Section 3.2: of the budgets 1, 3 and 5 with accuracies 0, 0.4 and 0.6, the slopes are 0.2, 0.15 and 0.1. */
static void scaling(void **state) {
    (void)state;
    const ThinkingRun run[] = {{1, 1, 0, 1}, {3, 3, 0.4, 1}, {5, 5, 0.6, 1}};
    assert_near(thinking_scaling(run, 3), 0.15, 1e-12);
    assert_true(isnan(thinking_scaling(run, 1)));
}

static void budgets(void **state) {
    (void)state;
    Error e;
    int32_t b[THINKING_BUDGETS];
    assert_int_equal(thinking_budgets(&(ThinkingOptions){.tokens = "1,20,inf"}, b, &e), 3);
    assert_true(b[0] == 1 && b[1] == 20 && b[2] == THINKING_INFINITE);
    static const char *const bad[] = {"",         "0",  "-1", "5,5", "7,3",        "inf,3",
                                      "infinite", "3,", ",3", "3x",  "99999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(thinking_budgets(&(ThinkingOptions){.tokens = bad[i]}, b, &e), 0);
}

static void refusals(void **state) {
    (void)state;
#define GENERATE "./generate -c $T/script.bin --raw -i $T/one.jsonl -o $T/kept "
    refused(2, GENERATE "--ignore-end 1", "--ignore-end: used only with --think-tokens");
    refused(2, GENERATE "--think-tokens 5 --wait-text x", "--wait-text: used only with --ignore-end");
    refused(2, GENERATE "--think-tokens 5,6 -g 9", "give one budget");
    refused(2, GENERATE "--think-tokens 5 --tools calculator", "give only one of them");
    refused(2, GENERATE "--think-tokens 60 -g 9", "fit the context of 64; lower --max-new-tokens or the budget");
    refused(2, GENERATE "--think-tokens 5 -g 9 --think-end ''", "the text is empty");
    refused(2, "./generate -c $T/script.bin --think-tokens 5 x", "--think-tokens: used only for JSON lines");
#undef GENERATE
}

/* ---- self-certainty ---------------------------------------------------------------------------------------------- */

/* The mean KL(U || p) over the drawn tokens of a completion of more tokens than are looked at together. */
static void self_certainty(void **state) {
    (void)state;
    Error e;
    Model m = models_random(CONTEXT);
    Certainty c;
    int32_t ids[CONTEXT];
    double score, sum = 0, drawn = 0;
    for (int i = 0; i < CONTEXT; i++) ids[i] = 'a' + 5 * i % 26;
    Completion x = {.tokens = ids + PROMPT, .count = CONTEXT - PROMPT, .trajectory = trajectory_new(CONTEXT)};
    memset(x.trajectory->drawn, 1, (size_t)x.count);
    memset(x.trajectory->drawn + 10, 0, 5);
    if (!certainty_open(&c, &m, CONTEXT, &e) || !certainty_score(&c, ids, PROMPT, &x, &score, &e))
        fail_msg("%s", e.text);
    float *z = models_logits(&m, ids, CONTEXT);
    for (int i = PROMPT; i < CONTEXT; i++) {
        if (i - PROMPT >= 10 && i - PROMPT < 15) continue;
        drawn++;
        for (int v = 0; v < MODELS_VOCAB; v++)
            sum += (models_nats(z + (size_t)(i - 1) * MODELS_VOCAB, 1, v) - log(MODELS_VOCAB)) / MODELS_VOCAB;
    }
    assert_near(score, sum / drawn, 1e-4);
    free(z), trajectory_free(x.trajectory), certainty_close(&c), model_free(&m);
}

/* ---- ablation of thoughts -------------------------------------------------------------------------------------- */

/* The log-probability of the tokens of a text from byte `from` on. */
static double logp_of(const Model *m, const char *text, int from) {
    int32_t ids[CONTEXT];
    const int n = (int)strlen(text);
    double sum = 0;
    for (int i = 0; i < n; i++) ids[i] = (unsigned char)text[i];
    float *z = models_logits(m, ids, n);
    for (int i = from; i < n; i++) sum -= models_nats(z + (size_t)(i - 1) * MODELS_VOCAB, 1, ids[i]);
    free(z);
    return sum;
}

/* Two completions, with all variants written out. The second one's steps are replaced by those of the first. */
static void ablation(void **state) {
    (void)state;
    Error e;
    Model m = models_random(CONTEXT);
    const ModelText text = text_of_bytes();
    static const char *const said[] = {"ab;cd;e##xyz", "mnop;q##st", "no end"};
    static const char *const variants[2][6] = {
        {"Pab;cd;e##xyz", "P##xyz", "Pcd;e##xyz", "Pab;e##xyz", "Pab;cd;##xyz", NULL},
        {"Pmnop;q##st", "P##st", "Pq##st", "Pmnop;##st", "Pab;q##st", "Pmnop;cd;##st"}};
    double L[2][6], all = 0, removed = 0, swapped = 0, weighed = 0, needed = 0;
    Ablation x;
    if (!ablation_open(&x, &m, &text, "##", ";", 16, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < 3; i++) {
        int32_t ids[16];
        const int n = (int)strlen(said[i]);
        for (int k = 0; k < n; k++) ids[k] = (unsigned char)said[i][k];
        if (!ablation_add(&x, (const int32_t[]){'P'}, 1, ids, n, &e)) fail_msg("%s", e.text);
    }
    for (int i = 0; i < 2; i++) {
        const int steps = 3 - i, answer = 3 - i;
        for (int k = 0; k < 6 && variants[i][k]; k++)
            L[i][k] = logp_of(&m, variants[i][k], (int)strlen(variants[i][k]) - answer);
        all += L[i][0] - L[i][1];
        for (int k = 0; k < steps; k++) {
            const double d = L[i][0] - L[i][2 + k];
            removed += d;
            weighed += L[i][0] > L[i][1];
            needed += L[i][0] > L[i][1] && d > 0.7 * (L[i][0] - L[i][1]);
        }
    }
    swapped = 2 * L[1][0] - L[1][4] - L[1][5];
    assert_near(x.completions, 2, 0);
    assert_near(x.without, 1, 0);
    assert_near(x.steps, 5, 0);
    assert_near(x.swaps, 2, 0);
    assert_near(x.all, all, 1e-3);
    assert_near(x.full, L[0][0] + L[1][0], 1e-3);
    assert_near(x.removed, removed, 1e-3);
    assert_near(x.swapped, swapped, 1e-3);
    assert_near(x.weighed, weighed, 0);
    assert_near(x.needed, needed, 0);
    ablation_close(&x), model_free(&m);
}

/* ---- search ---------------------------------------------------------------------------------------------------- */

enum { STEP = 'n', STOP = 'e', LIMIT = 40, MOST = 400 };

/* A solution of the reference: the prompt and what was drawn. */
typedef struct Plain {
    int32_t ids[CONTEXT];
    int n, tree;
    uint64_t path;
    bool finished, over;
    double score;
} Plain;

typedef struct PlainSearch {
    const Model *policy, *judge;
    const RolloutRequest *q;
    const Sampling *how;
    BeamKind kind;
    PrmAggregation aggregation;
    int n, width, iterations, lookahead;
    bool filter, sort;
    Plain live[16], result[MOST];
    int lives, results;
} PlainSearch;

/* Draws a step, or the rest. */
static void plain_step(const PlainSearch *x, Plain *b, double temperature, bool to_end) {
    while (!b->over) {
        b->ids[b->n] =
            draw(x->policy, b->ids, b->n, temperature, x->how->seed, RANDOM_SEARCH + (b->path >> 8), (uint64_t)b->n);
        const int32_t token = b->ids[b->n++];
        b->finished = token == STOP;
        b->over = b->finished || b->n - x->q->prompt_len >= LIMIT;
        if (token == STEP && !to_end) break;
    }
}

/* The score as reward_model.h defines it, from one pass over the whole solution. */
static double plain_score(const PlainSearch *x, const Plain *b) {
    Error e;
    Workspace w;
    Batch batch = batch_new(CONTEXT, CONTEXT, 1);
    int32_t ids[CONTEXT];
    float value[CONTEXT];
    int n = b->n;
    double total = 1;
    memcpy(ids, b->ids, sizeof ids);
    if (b->finished) n--;
    if (n == x->q->prompt_len || ids[n - 1] != STEP) ids[n++] = STEP;
    if (!workspace_new(&w, x->judge, CONTEXT, CONTEXT, 1, false, 0, &e)) fail_msg("%s", e.text);
    batch_segment(&batch, ids, n, 0, -1);
    for (int i = x->q->prompt_len; i < n; i++)
        if (ids[i] == STEP && (i + 1 == n || ids[i + 1] != STEP)) batch_target(&batch, i, 0);
    model_forward(x->judge, &w, &batch, 1, &(ModelOutput){.value = value});
    for (int i = 0; i < batch.targets; i++) {
        const double p = 1 / (1 + exp(-value[i]));
        total = x->aggregation == PRM_LAST ? p : x->aggregation == PRM_MIN ? fmin(total, p) : total * p;
    }
    workspace_free(&w, x->judge), batch_free(&batch);
    return total;
}

static bool plain_equal(const Plain *a, const Plain *b) {
    return a->n == b->n && !memcmp(a->ids, b->ids, (size_t)a->n * sizeof *a->ids);
}

static void plain_take_best(PlainSearch *x, int keep) {
    Plain next[16];
    int n = 0;
    bool taken[16] = {false};
    for (; keep > 0; keep--) {
        int best = -1;
        for (int i = 0; i < x->lives; i++)
            if (!taken[i] && (best < 0 || x->live[i].score > x->live[best].score)) best = i;
        if (best < 0) break;
        taken[best] = true;
    }
    for (int i = 0; i < x->lives; i++)
        for (int k = 0; taken[i] && k < x->width; k++) {
            next[n] = x->live[i];
            next[n++].path = beam_path(x->live[i].path, (uint64_t)k);
        }
    memcpy(x->live, next, sizeof next);
    x->lives = n;
}

static void plain_beam(PlainSearch *x) {
    int kept = 0;
    for (int i = 0; i < x->lives; i++) {
        bool equal = false;
        if (x->live[i].over) {
            x->result[x->results++] = x->live[i];
            continue;
        }
        for (int k = 0; k < kept; k++) equal = equal || plain_equal(&x->live[k], &x->live[i]);
        if (!(equal && x->filter)) x->live[kept++] = x->live[i];
    }
    x->lives = kept;
    if (x->kind != SEARCH_REBASE) {
        plain_take_best(x, x->n / x->width);
        return;
    }
    Plain next[16];
    double weight[16], sum = 0;
    int copies[16], left = x->n - x->results, all = left, n = 0;
    for (int i = 0; i < kept; i++) sum += weight[i] = exp(x->live[i].score / 0.1);
    for (int i = 0; i < kept; i++) left -= copies[i] = (int)floor(all * weight[i] / sum);
    while (kept && left-- > 0) {
        int best = -1;
        double most = -1;
        for (int i = 0; i < kept; i++)
            if (all * weight[i] / sum - copies[i] > most) most = all * weight[best = i] / sum - copies[i];
        copies[best]++;
    }
    for (int i = 0; i < kept; i++)
        for (int k = 0; k < copies[i]; k++) {
            next[n] = x->live[i];
            next[n++].path = beam_path(x->live[i].path, (uint64_t)k);
        }
    memcpy(x->live, next, sizeof next);
    x->lives = n;
}

static void plain_dvts(PlainSearch *x, bool last) {
    Plain next[16];
    int n = 0;
    for (int tree = 0; tree < x->n / x->width; tree++) {
        int best = -1;
        for (int i = 0; i < x->lives; i++)
            if (x->live[i].tree == tree && (best < 0 || x->live[i].score > x->live[best].score)) best = i;
        for (int i = 0; best >= 0 && (last || x->live[best].over) && i < x->lives; i++)
            if (x->live[i].tree == tree) x->result[x->results++] = x->live[i];
        for (int k = 0; best >= 0 && !last && !x->live[best].over && k < x->width; k++) {
            next[n] = x->live[best];
            next[n++].path = beam_path(x->live[best].path, (uint64_t)k);
        }
    }
    memcpy(x->live, next, sizeof next);
    x->lives = n;
}

static void plain_search(PlainSearch *x) {
    const int iterations = x->kind == SEARCH_BEST_OF_N ? 1 : x->iterations;
    for (x->lives = 0; x->lives < x->n; x->lives++) {
        Plain *b = &x->live[x->lives];
        *b = (Plain){.n = x->q->prompt_len, .tree = x->lives / x->width};
        memcpy(b->ids, x->q->prompt, (size_t)b->n * sizeof *b->ids);
        b->path = beam_path(beam_path(x->q->id, 0), (uint64_t)x->lives);
    }
    for (int it = 0; it < iterations && x->lives; it++) {
        const bool last = it + 1 == iterations;
        for (int i = 0; i < x->lives; i++) {
            plain_step(x, &x->live[i], x->how->temperature, last);
            Plain ahead = x->live[i];
            for (int k = 0; k < x->lookahead && !last; k++) plain_step(x, &ahead, 0, false);
            x->live[i].score = plain_score(x, &ahead);
            for (int k = 0; k < i; k++)
                close_call = close_call || (!plain_equal(&x->live[k], &x->live[i]) &&
                                            fabs(x->live[k].score - x->live[i].score) < 1e-5);
        }
        if (x->kind == SEARCH_DVTS) plain_dvts(x, last);
        else plain_beam(x);
    }
    for (int i = 0; x->sort && i < x->results; i++)
        for (int k = i + 1; k < x->results; k++)
            if (x->result[k].score > x->result[i].score) {
                const Plain held = x->result[i];
                x->result[i] = x->result[k];
                x->result[k] = held;
            }
    if (x->results > x->n) x->results = x->n;
}

/* A process model whose probabilities are neither 0 nor 1, so that no rounding decides which solution is better. */
static Model random_judge(void) {
    Error e;
    Model m;
    ModelConfig c = gpt2_config(2, 2, 32, MODELS_VOCAB, CONTEXT);
    c.value_head = 1;
    if (!model_new(&m, &c, backend_cpu(), models_device, false, &e)) fail_msg("%s", e.text);
    Random r = random_start(9, 0);
    float *w = xcalloc(m.parameters, sizeof *w);
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (size_t k = m.tensor[i].offset; k < m.tensor[i].offset + m.tensor[i].size; k++)
            w[k] = (float)((i == TENSOR_valuew ? 0.1 : 0.3) * random_normal(&r)) + (m.tensor[i].init == INIT_ONE);
    m.backend->weights_upload(m.device, m.weights, w, m.parameters);
    free(w);
    return m;
}

/* The results of the search for all prompts at once, and one by one, equal those of the reference. */
static void search_equals_the_reference(void **state) {
    (void)state;
    Error e;
    const ModelText text = text_of_bytes();
    RewardModel prm = {.model = random_judge(), .note = {.kind = REWARD_MODEL_PRM, .step_token = STEP}};
    Model policy = models_random(CONTEXT);
    Sampling s = sampling(LIMIT, STOP);
    Work w = {0};
    int many = 0, unfinished = 0, compared = 0;
    work_prompts(&w, 1);
    token_list_append(&prm.text.ends, STOP);
    if (!reward_model_reserve(&prm, 600, &e)) fail_msg("%s", e.text);
    static const struct {
        BeamKind kind;
        PrmAggregation aggregation;
        int n, width, iterations, lookahead;
        bool filter, sort;
    } settings[] = {
        {SEARCH_BEST_OF_N, PRM_MIN, 5, 4, 40, 0, false, false}, {SEARCH_BEAM, PRM_LAST, 4, 2, 40, 0, true, false},
        {SEARCH_BEAM, PRM_PRODUCT, 8, 4, 3, 2, false, true},    {SEARCH_DVTS, PRM_LAST, 6, 2, 40, 0, false, false},
        {SEARCH_DVTS, PRM_MIN, 4, 4, 2, 1, false, false},       {SEARCH_REBASE, PRM_LAST, 6, 4, 40, 0, false, false}};
    for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
        const BeamOptions o = {.separator = "n",
                               .width = settings[k].width,
                               .iterations = settings[k].iterations,
                               .lookahead = settings[k].lookahead,
                               .balance = 0.1,
                               .filter = settings[k].filter,
                               .sort = settings[k].sort};
        BeamTree tree[REQUESTS], alone[REQUESTS];
        BeamSearch x;
        prm.aggregation = settings[k].aggregation;
        if (!beam_new(&x, &o, &policy, &text, &prm, REQUESTS, 8, PROMPT, LIMIT, &e)) fail_msg("%s", e.text);
        for (int i = 0; i < REQUESTS; i++)
            alone[i] = tree[i] =
                (BeamTree){.prompt = w.prompt[i], .prompt_len = w.request[i].prompt_len, .id = (uint64_t)i};
        if (!beam_run(&x, settings[k].kind, settings[k].n, &s, tree, REQUESTS, &e)) fail_msg("%s", e.text);
        for (int i = 0; i < REQUESTS; i++) {
            if (!beam_run(&x, settings[k].kind, settings[k].n, &s, &alone[i], 1, &e)) fail_msg("%s", e.text);
            PlainSearch *y = xcalloc(1, sizeof *y);
            RolloutRequest q = w.request[i];
            q.id = (uint64_t)i;
            *y = (PlainSearch){.policy = &policy,
                               .judge = &prm.model,
                               .q = &q,
                               .how = &s,
                               .kind = settings[k].kind,
                               .aggregation = prm.aggregation,
                               .n = settings[k].n,
                               .width = settings[k].width,
                               .iterations = settings[k].iterations,
                               .lookahead = settings[k].lookahead,
                               .filter = settings[k].filter,
                               .sort = settings[k].sort};
            close_call = false;
            plain_search(y);
            compared += !close_call;
            if (close_call) {
                free(y);
                beam_tree_free(&tree[i]), beam_tree_free(&alone[i]);
                continue;
            }
            assert_int_equal(tree[i].results, y->results);
            assert_int_equal(alone[i].results, y->results);
            for (int r = 0; r < y->results; r++) {
                const Completion *c = &tree[i].result[r].completion;
                assert_int_equal(c->count, y->result[r].n - q.prompt_len);
                assert_memory_equal(c->tokens, y->result[r].ids + q.prompt_len, (size_t)c->count * sizeof(int32_t));
                assert_int_equal(c->finished, y->result[r].finished);
                assert_near(tree[i].result[r].score, y->result[r].score, 1e-4);
                assert_near(alone[i].result[r].score, y->result[r].score, 1e-4);
                unfinished += !c->finished;
            }
            many += y->results > 1;
            free(y);
            beam_tree_free(&tree[i]), beam_tree_free(&alone[i]);
        }
        beam_free(&x);
    }
    if (many < 15 || unfinished < 5 || compared < 24) fail_msg("%d compared, %d with several results", compared, many);
    token_list_free(&prm.text.ends);
    workspace_free(&prm.work, &prm.model), batch_free(&prm.batch);
    free(prm.value), free(prm.owner), free(prm.steps);
    model_free(&policy), model_free(&prm.model);
}

/* Sums over the batches of an engine. */
typedef struct Counted {
    double rows, targets, pairs;
} Counted;

static void count_batch(void *context, const Model *m, const Workspace *w, const KVCache *kv, const Batch *b, Draw how,
                        const DecodeStep *step) {
    Counted *c = (Counted *)context;
    c->rows += b->rows;
    c->targets += b->targets;
    c->pairs += batch_pairs(b);
    model_decode(m, w, kv, b, how, step);
}

/* The FLOPs of a curve are those of the batches that the engine runs, for prompts and completions of different lengths, many of
 * which end by themselves, and any number of samples. */
static void curve_costs_what_is_computed(void **state) {
    (void)state;
    Error e;
    Model m = models_random(CONTEXT);
    for (int k = 1; k <= 8; k *= 2) {
        Rollout engine;
        Completion out[REQUESTS * 8] = {0};
        RolloutRequest request[REQUESTS];
        int32_t prompt[REQUESTS][PROMPT];
        ComputeCurve curve = {0};
        Counted counted = {0};
        Sampling how = sampling_default();
        how.max_new = 40;
        how.seed = (uint64_t)k;
        for (int32_t token = 0; how.stops < ROLLOUT_STOPS; token += 9) how.stop[how.stops++] = token;
        Random r = random_start(3, 1);
        for (int i = 0; i < REQUESTS; i++) {
            const int n = 1 + i % PROMPT;
            for (int t = 0; t < n; t++) prompt[i][t] = (int32_t)random_below(&r, MODELS_VOCAB);
            request[i] = (RolloutRequest){
                .prompt = prompt[i], .prompt_len = n, .samples = k, .id = (uint64_t)(i * k), .out = &out[i * k]};
        }
        if (!rollout_new(&engine, &m, 5, PROMPT, how.max_new, &e)) fail_msg("%s", e.text);
        engine.decode = count_batch;
        engine.decode_context = &counted;
        if (!rollout_run(&engine, &how, request, REQUESTS, NULL, NULL, &e)) fail_msg("%s", e.text);
        int ended = 0;
        for (int i = 0; i < REQUESTS; i++)
            for (int j = 0; j < k; j++) {
                EvaluationSample s = {.prompt = i, .sample = j, .completion = &out[i * k + j]};
                curve_count(&curve, &s, request[i].prompt_len);
                ended += s.completion->finished;
                if (j) continue;
                s.sample = -1; /* counts the prompt */
                curve_count(&curve, &s, request[i].prompt_len);
            }
        const double is = curve_flops(&curve, &m.config, &curve.sample, k, true);
        const double want = model_flops(&m.config, counted.rows, counted.targets, counted.pairs, 1) / REQUESTS;
        assert_near(is / want, 1, 1e-9);
        assert_near(curve.sample.tokens, engine.tokens, 0);
        assert_true(k < 4 || (ended > 0 && ended < REQUESTS * k));
        for (int i = 0; i < REQUESTS * k; i++) completion_free(&out[i]);
        rollout_free(&engine);
    }
    model_free(&m);
}

/* What search refuses, before it draws. */
static void search_refusals(void **state) {
    (void)state;
    Error e;
    ShardWriter w = models_shard("sums.shard", RECORD_PROMPT, "plain");
    models_add_prompt(&w, "1+2=", "add", "3", "");
    models_commit(&w);
    Model m = random_judge();
    ModelFile f = {.lineage = json_array(), .head = true};
    if (!tokenizer_store(&models_bytes, &f.tokenizer, &f.tokenizer_bytes, &e)) fail_msg("%s", e.text);
    if (!model_save(&m, &f, files_path("bt.bin"), false, NULL, NULL, &e)) fail_msg("%s", e.text);
    f.reward = xstrdup("{\"kind\":\"prm\",\"mean\":0,\"deviation\":1,\"step_token\":126}");
    if (!model_save(&m, &f, files_path("prm.bin"), false, NULL, NULL, &e)) fail_msg("%s", e.text);
    model_file_free(&f), model_free(&m);
    m = models_random(CONTEXT);
    models_save(&m, "policy.bin", false, NULL);
    model_free(&m);
#define EVALUATE "./evaluate -c $T/policy.bin -i $T/sums.shard --completions $T/kept -g 9 "
    refused(2, EVALUATE "--search beam", "--search: needs a process reward model");
    refused(2, EVALUATE "--reward-model $T/prm.bin --search beam,bfs", "'bfs' is none of best-of-n|beam|dvts|rebase");
    refused(2, EVALUATE "--reward-model $T/prm.bin --search beam,beam", "beam is given twice");
    refused(2, EVALUATE "--reward-model $T/prm.bin --search dvts --num-samples 6", "need a multiple of --beam-width 4");
    refused(2, EVALUATE "--reward-model $T/prm.bin --search best-of-n --lookahead 1", "--lookahead: used only by");
    refused(2, EVALUATE "--reward-model $T/prm.bin --beam-width 2", "--beam-width: used only by beam and dvts");
    refused(1, EVALUATE "--reward-model $T/bt.bin --search beam", "is a Bradley-Terry reward model; the steps");
    /* the random model never writes this separator among its first 32 steps */
    run(1, EVALUATE "--reward-model $T/prm.bin --search beam --num-samples 32 --step-separator '~~~~~~'");
    assert_holds(said, "--step-separator: none of the first 32 samples has one");
    run(0, EVALUATE "--reward-model $T/prm.bin --search best-of-n,dvts --num-samples 4 --step-separator n --slots 1");
    json_t *row = json_line_of(out, 0), *search = json_object_get(row, "search");
    assert_int_equal(json_number_of(json_object_get(search, "dvts"), "n"), 4);
    assert_near(json_number_of(json_object_get(search, "best-of-n"), "results"), 4, 0);
    json_decref(row);
    /* votes with weights that need no other model; with one sample a vote is the sample */
    run(0, EVALUATE "--num-samples 3 --weight logprob");
    assert_holds(out, "\"weighted@3\":");
    run(0, EVALUATE "--num-samples 3 --weight certainty");
    assert_holds(said, "weighted@k");
    /* FLOPs: 2 per parameter of a product and row, and 4 per channel, layer and pair of a query with a key */
    run(0,
        EVALUATE "--reward-model $T/prm.bin --search best-of-n,beam --beam-width 2 --step-separator n --num-samples 4 "
                 "--temperature 1 --compute-curve $T/curve.jsonl --report $T/curve.html");
    char *rows = text_of(files_path("curve.jsonl")), *page = text_of(files_path("curve.html"));
    const char *const methods[] = {"greedy",   "pass",      "pass",      "pass",      "majority", "majority",
                                   "majority", "best",      "best",      "best",      "weighted", "weighted",
                                   "weighted", "best-of-n", "best-of-n", "best-of-n", "beam",     "beam"};
    const int parameter[] = {0, 1, 2, 4, 1, 2, 4, 1, 2, 4, 1, 2, 4, 1, 2, 4, 2, 4};
    assert_int_equal(lines_of(rows), 18);
    for (int i = 0; i < 18; i++) {
        row = json_line_of(rows, i);
        assert_string_equal(json_text_of(row, "method"), methods[i]);
        if (i) assert_int_equal(json_number_of(row, "parameter"), parameter[i]);
        assert_holds(page, methods[i]);
        if (!i) {
            const ModelConfig c = gpt2_config(2, 2, 32, MODELS_VOCAB, CONTEXT);
            const double n = 4, drawn = json_number_of(row, "tokens"), C = 32, L = 2;
            const double fed = drawn - 1; /* the last token is read by nobody */
            const double products = L * 12 * C * C * (n + fed) + drawn * C * c.padded_vocab;
            const double pairs = (n + fed) * (n + fed + 1) / 2;
            assert_near(json_number_of(row, "flops"), 2 * products + 4 * L * C * pairs, 1);
        }
        json_decref(row);
    }
    assert_holds(page, "Accuracy by difficulty");
    free(rows), free(page);
    run(0, EVALUATE "--reward-model $T/prm.bin --search rebase --step-separator n --num-samples 3 "
                    "--compute-curve $T/curve.jsonl");
    rows = text_of(files_path("curve.jsonl"));
    row = json_line_of(rows, lines_of(rows) - 1); /* the last point has all samples, also if they are no power of two */
    assert_string_equal(json_text_of(row, "method"), "rebase");
    assert_int_equal(json_number_of(row, "parameter"), 3);
    json_decref(row), free(rows);
    run(0, EVALUATE "--think-ablation --think-end n --step-separator e --num-samples 4 --temperature 1 -g 60");
    assert_holds(out, "\"think_ablation\":{\"completions\":");
    refused(2, EVALUATE "--think-ablation --think-tokens 5", "--think-ablation: cannot be used with");
    refused(2, EVALUATE "--think-end x", "--think-end: used only with");
    refused(2, EVALUATE "--report $T/x.html", "--report: used only with --compute-curve or --reference");
    refused(2, EVALUATE "--weight reward", "--weight: used only for the samples of a prompt shard; reward needs");
#undef EVALUATE
}

/* ---- labels of steps ------------------------------------------------------------------------------------------ */

/* Position p is followed by one of two scripts, each in half of the samples, so the values are known: of the four steps of
 * "a;b;c;7", what follows a prefix decides whether the answer is 7 (always, in half of the cases, or never). */
static void labels_of_steps(void **state) {
    (void)state;
    static const char right[] = "_a;b;c;7", wrong[] = "_a;b;c;8";
    int32_t a[8], b[8];
    for (int i = 0; i < 7; i++) {
        a[i] = (unsigned char)right[i + 1];
        b[i] = (unsigned char)wrong[i + 1];
    }
    Model m = models_scripted(32, a, b, 7);
    models_save(&m, "coin.bin", false, NULL);
    model_free(&m);
    put("solved.jsonl",
        "{\"prompt\":\"_\",\"task\":\"exact\",\"answer\":\"a;b;c;7\",\"completion\":\"a;b;c;7\",\"right\":true}\n"
        "{\"prompt\":\"_\",\"task\":\"exact\",\"answer\":\"a;b;c;7\",\"completion\":\"a;b;x;7\"}\n"
        "{\"prompt\":\"_\",\"task\":\"exact\",\"answer\":\"a;b;c;7\",\"completion\":\"x;b;c;8\"}\n");
#define LABEL                                                                                                          \
    "./generate -c $T/coin.bin --raw -i $T/solved.jsonl --reward verify --step-separator ';' -g 9 --temperature 1 "
    run(0, LABEL "--rollouts-per-step 64");
    static const int good[3][4] = {{1, 1, 1, 1}, {1, 1, 0, 0}, {0, 0, 0, 0}};
    for (int i = 0; i < 3; i++) {
        json_t *row = json_line_of(out, i), *labels = json_object_get(row, "labels"),
               *values = json_object_get(row, "values");
        assert_int_equal(json_array_size(json_object_get(row, "completions")), 4);
        assert_null(json_object_get(row, "completion"));
        assert_null(json_object_get(row, "right"));
        for (size_t k = 0; k < 4; k++) {
            const double value = json_number_value(json_array_get(values, k));
            assert_int_equal(json_is_true(json_array_get(labels, k)), good[i][k]);
            if (k == 3 || !good[i][k]) assert_near(value, good[i][k], 0);
            else assert_near(value, 0.5, 0.3); /* 64 coins: 4.8 standard deviations */
        }
        json_decref(row);
    }
    /* equal prefixes of the first two solutions are continued once: 3 + 3 + 3 prefixes, of which 2 are equal */
    assert_holds(said, "9 prefixes continued 64 times, 2 of them equal to another one");
    put("whole.jsonl", out);
    run(0, LABEL "--rollouts-per-step 64 --search-first-error");
    for (int i = 0; i < 3; i++) {
        json_t *row = json_line_of(out, i), *labels = json_object_get(row, "labels");
        for (size_t k = 0; k < 4; k++) assert_int_equal(json_is_true(json_array_get(labels, k)), good[i][k]);
        assert_null(json_object_get(row, "values"));
        json_decref(row);
    }
    /* soft labels go into a shard and train a model */
    run(0, "./data/make_shard --quiet -i $T/whole.jsonl --labels-field values --step-separator ';' -o $T/soft.shard && "
           "./data/show --records 1 $T/soft.shard && "
           "./train_rm --kind prm --layers 1 --width 16 --heads 2 --context 32 -i $T/soft.shard -o $T/soft.bin -x 1");
    assert_holds(out, "7;⟦1⟧");
#define REFUSED "./generate -c $T/coin.bin --raw -o $T/kept "
    refused(2, REFUSED "-i $T/solved.jsonl --rollouts-per-step 4", "needs --reward verify");
    refused(2, REFUSED "-i $T/solved.jsonl --search-first-error", "used only with --rollouts-per-step");
    refused(2, REFUSED "-i $T/solved.jsonl --reward verify --rollouts-per-step 4 --temperature 0", "are identical");
    refused(2, REFUSED "-i $T/solved.jsonl --reward verify --rollouts-per-step 4 --num-samples 2",
            "--num-samples: not used");
    put("bare.jsonl", "{\"prompt\":\"_\",\"task\":\"exact\",\"answer\":\"7\"}\n");
    refused(1, REFUSED "-i $T/bare.jsonl --reward verify --rollouts-per-step 4", "row 1: it has no completion");
#undef LABEL
#undef REFUSED
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(forced_equals_the_reference),
                                       cmocka_unit_test(infinite_is_plain),
                                       cmocka_unit_test(an_end_of_several_tokens),
                                       cmocka_unit_test(scaling),
                                       cmocka_unit_test(budgets),
                                       cmocka_unit_test(refusals),
                                       cmocka_unit_test(search_equals_the_reference),
                                       cmocka_unit_test(curve_costs_what_is_computed),
                                       cmocka_unit_test(search_refusals),
                                       cmocka_unit_test(self_certainty),
                                       cmocka_unit_test(labels_of_steps),
                                       cmocka_unit_test(ablation)};
    return cmocka_run_group_tests_name("test_time", tests, models_setup, models_teardown);
}
