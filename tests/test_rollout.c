/* test_rollout.c - rollouts against uncached forward passes of the same model, and against the exact distributions of a
 * small one. */
#include "../llmc/base/error.h"        /* Error, xcalloc, xmalloc, error_set */
#include "../llmc/base/random.h"       /* random_below, Random, random_start, RANDOM_EVAL, ... */
#include "../llmc/cpu/cpu.h"           /* backend_cpu */
#include "../llmc/model/backend.h"     /* Backend, Device */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/config.h"      /* ModelConfig, gpt2_config */
#include "../llmc/model/model.h"       /* Model, model_free, model_new */
#include "../llmc/model/pack.h"        /* batch_free, batch_new, batch_segment, batch_target, ... */
#include "../llmc/model/tensors.h"     /* INIT_ONE, TENSOR_COUNT */
#include "../llmc/model/transformer.h" /* ModelOutput, model_forward, model_logits */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "../llmc/rollout/rollout.h"   /* rollout_run, Sampling, RolloutRequest, rollout_free, ... */
#include "../llmc/rollout/sequence.h"  /* SEQUENCE_CACHE, Sequence, sequence_draw, sequence_free, ... */
#include "cpu_device.h"                /* B, D, close_device, open_device_one_thread */
#include "variants.h"                  /* VARIANTS, variant_of */

enum { VOCAB = 29, CONTEXT = 48, NEW = 14, PROMPT = 20, REQUESTS = 40 };

/* Weights so large that some tokens are nearly certain and others are ambiguous. */
static Model model_of(ModelConfig c, double amplitude, uint64_t seed) {
    Error e;
    Model m;
    if (!model_new(&m, &c, B, D, true, &e)) fail_msg("%s", e.text);
    Random r = random_start(seed, 0);
    float *host = xmalloc(m.parameters * sizeof *host);
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (size_t k = m.tensor[i].offset; k < m.tensor[i].offset + m.tensor[i].size; k++)
            host[k] = (float)(amplitude * random_normal(&r)) + (m.tensor[i].init == INIT_ONE);
    B->weights_upload(D, m.weights, host, m.parameters);
    free(host);
    return m;
}

static Model random_model(int layers, int vocab, int kv_heads, double amplitude, uint64_t seed) {
    ModelConfig c = gpt2_config(layers, 4, 32, vocab, CONTEXT);
    c.kv_heads = kv_heads;
    if (kv_heads != c.heads) c.head_size += 2; /* the heads are wider than the residual stream */
    return model_of(c, amplitude, seed);
}

static Model variant_model(int variant, double amplitude, uint64_t seed) {
    ModelConfig c = gpt2_config(2, 4, 32, VOCAB, CONTEXT);
    variant_of(&c, variant);
    return model_of(c, amplitude, seed);
}

/* Requests of 1 to 7 samples with prompts of 1 to PROMPT tokens. */
typedef struct Work {
    int n, samples;
    int32_t prompt[REQUESTS][PROMPT];
    RolloutRequest request[REQUESTS];
    Completion out[8 * REQUESTS];
} Work;

static Work *work_new(uint64_t seed, int n, int vocab, int most) {
    Work *w = xcalloc(1, sizeof *w);
    Random r = random_start(seed, 1);
    w->n = n;
    for (int i = 0; i < n; i++) {
        const int length = 1 + (int)random_below(&r, PROMPT), samples = 1 + (int)random_below(&r, (uint64_t)most);
        for (int k = 0; k < length; k++) w->prompt[i][k] = (int32_t)random_below(&r, (uint64_t)vocab);
        w->request[i] = (RolloutRequest){.prompt = w->prompt[i],
                                         .prompt_len = length,
                                         .samples = samples,
                                         .id = (uint64_t)w->samples,
                                         .out = &w->out[w->samples]};
        w->samples += samples;
    }
    return w;
}

static void work_clear(Work *w) {
    for (int i = 0; i < w->samples; i++) completion_free(&w->out[i]);
}
static void work_free(Work *w) {
    work_clear(w);
    free(w);
}

static void run(const Model *m, int slots, const Sampling *s, Work *w) {
    Error e;
    Rollout r;
    if (!rollout_new(&r, m, slots, PROMPT, NEW, &e)) fail_msg("%s", e.text);
    if (!rollout_run(&r, s, w->request, w->n, NULL, NULL, &e)) fail_msg("%s", e.text);
    int64_t drawn = 0;
    for (int i = 0; i < w->samples; i++) drawn += w->out[i].count;
    assert_int_equal(r.tokens, drawn); /* no draw is wasted */
    rollout_free(&r);
}

/* The same tokens, and the same log-probabilities up to the tolerance. With large weights the log-probabilities are of
 * order 10, where a unit in the last place is 1e-6; the order of sums depends on how many rows a step has, so two runs
 * differ by some of these units: 2e-5. Against an uncached pass, whose attention sums in other blocks, 1e-4. */
static void assert_same(const Work *a, const Work *b, double tolerance) {
    assert_int_equal(a->samples, b->samples);
    for (int i = 0; i < a->samples; i++) {
        assert_int_equal(a->out[i].count, b->out[i].count);
        assert_int_equal(a->out[i].finished, b->out[i].finished);
        assert_memory_equal(a->out[i].tokens, b->out[i].tokens, (size_t)a->out[i].count * sizeof(int32_t));
        for (int k = 0; k < a->out[i].count; k++) assert_true(fabs(a->out[i].logp[k] - b->out[i].logp[k]) <= tolerance);
    }
}

/* Log-probabilities (V) after a sequence, from an uncached forward pass of it alone. */
static void next_distribution(const Model *m, const Workspace *w, Batch *b, const int32_t *tokens, int n,
                              float *logits) {
    Error e;
    batch_clear(b);
    batch_segment(b, tokens, n, 0, -1);
    batch_target(b, n - 1, 0);
    assert_true(model_logits(m, w, b, logits, &e));
}

static Sampling sampling(float temperature) {
    Sampling s = sampling_default();
    s.temperature = temperature;
    s.max_new = NEW;
    s.seed = 77;
    return s;
}

/* ==== Against uncached passes ==== */

/* The next token of one request by greedy decoding, from the logits of an uncached pass. */
static int greedy_token(const float *logits, const int32_t *seen, int n, float penalty) {
    double adjusted[VOCAB];
    int best = 0;
    for (int v = 0; v < VOCAB; v++) adjusted[v] = logits[v];
    if (penalty == 1) n = 0;
    for (int i = 0; i < n; i++)
        adjusted[seen[i]] = logits[seen[i]] > 0 ? logits[seen[i]] / penalty : logits[seen[i]] * penalty;
    for (int v = 1; v < VOCAB; v++) best = adjusted[v] > adjusted[best] ? v : best;
    return best;
}

/* Greedy sampling: each token is the argmax of an uncached forward pass over everything before it. */
static void check_uncached(const Model *m, const Work *work, float penalty) {
    Error e;
    Workspace w;
    Batch b = batch_new(REQUESTS * CONTEXT, REQUESTS, REQUESTS);
    assert_true(workspace_new(&w, m, REQUESTS * CONTEXT, REQUESTS, REQUESTS, false, 0, &e));
    int32_t seen[REQUESTS][PROMPT + NEW];
    float logits[REQUESTS * VOCAB];
    int n[REQUESTS], finished = 0, varied = 0;
    bool over[REQUESTS] = {false};
    for (int i = 0; i < work->n; i++) {
        n[i] = work->request[i].prompt_len;
        memcpy(seen[i], work->prompt[i], (size_t)n[i] * sizeof(int32_t));
    }
    for (int t = 0; t < NEW; t++) {
        batch_clear(&b); /* each sequence so far, whole, in a segment of its own */
        for (int i = 0; i < work->n; i++)
            if (!over[i]) batch_target(&b, batch_last_row(&b, batch_segment(&b, seen[i], n[i], 0, -1)), 0);
        assert_true(model_logits(m, &w, &b, logits, &e));
        const float *z = logits;
        for (int i = 0; i < work->n; i++) {
            if (over[i]) continue;
            const RolloutRequest *q = &work->request[i];
            const int best = greedy_token(z, seen[i], n[i], penalty);
            const bool stop = best == 3 || best == 11;
            double sum = 0;
            for (int v = 0; v < VOCAB; v++) sum += exp(z[v]);
            over[i] = stop || t == NEW - 1;
            for (int k = 0; k < q->samples; k++) {
                assert_true(t < q->out[k].count);
                if (q->out[k].tokens[t] != best)
                    fail_msg("prompt %d, token %d: %d, the uncached argmax is %d", i, t, q->out[k].tokens[t], best);
                assert_true(fabs(q->out[k].logp[t] - (z[best] - log(sum))) < 1e-4);
                if (over[i]) assert_true(q->out[k].count == t + 1 && q->out[k].finished == stop);
            }
            varied += t > 0 && best != seen[i][n[i] - 1];
            finished += stop;
            seen[i][n[i]++] = best;
            z += VOCAB;
        }
    }
    assert_true(finished > 3 && finished < REQUESTS - 3 && varied > REQUESTS); /* both kinds of end occurred */
    workspace_free(&w, m), batch_free(&b);
}

static void check_greedy(const Model *m, float penalty) {
    Sampling s = sampling(0);
    s.repetition_penalty = penalty;
    s.stop[0] = 3;
    s.stop[1] = 11;
    s.stops = 2;
    static const int slots[] = {1, 2, 5, 16, 64};
    Work *first = work_new(1, REQUESTS, m->config.vocab, 3);
    run(m, slots[0], &s, first);
    check_uncached(m, first, penalty);
    for (size_t k = 1; k < sizeof slots / sizeof *slots; k++) {
        Work *work = work_new(1, REQUESTS, m->config.vocab, 3);
        run(m, slots[k], &s, work);
        assert_same(work, first, 2e-5);
        work_free(work);
    }
    work_free(first);
}

static void test_greedy(void **state) {
    (void)state;
    Model m = random_model(2, VOCAB, 4, 0.3, 1);
    check_greedy(&m, 1);
    check_greedy(&m, 1.7f);
    model_free(&m);
    m = random_model(3, VOCAB, 1, 0.3, 2);
    check_greedy(&m, 1);
    model_free(&m);
    for (int v = 1; v < VARIANTS; v++) {
        m = variant_model(v, 0.3, 20 + (uint64_t)v);
        check_greedy(&m, 1);
        model_free(&m);
    }
}

/* The sampler's log-probabilities equal the trainer's, at the sampling temperature, over shared prompts. */
static void check_logp(const Model *m) {
    Error e;
    static const float temperature[] = {1, 0.6f, 1.5f};
    for (int k = 0; k < 3; k++) {
        Sampling s = sampling(temperature[k]);
        s.top_k = 20;
        s.top_p = 0.95f; /* the log-probability is normalised over the whole vocabulary all the same */
        Work *work = work_new(2, REQUESTS, VOCAB, 7);
        run(m, 9, &s, work);
        Batch b = batch_new(4000, 4000, 400);
        for (int i = 0; i < work->n; i++) {
            const RolloutRequest *q = &work->request[i];
            const int prompt = batch_segment(&b, q->prompt, q->prompt_len, 0, -1);
            for (int c = 0; c < q->samples; c++) batch_completion(&b, prompt, q->out[c].tokens, NULL, q->out[c].count);
        }
        Workspace w;
        assert_true(workspace_new(&w, m, 4000, 4000, 400, true, 1, &e));
        float *logp = xmalloc(4000 * sizeof *logp);
        model_forward(m, &w, &b, temperature[k], &(ModelOutput){.logp = logp});
        int at = 0;
        for (int i = 0; i < work->samples; i++)
            for (int c = 0; c < work->out[i].count; c++, at++)
                if (!(fabs(logp[at] - work->out[i].logp[c]) < 1e-4))
                    fail_msg("sample %d, token %d: %g, the trainer has %g", i, c, work->out[i].logp[c], logp[at]);
        assert_int_equal(at, b.targets);
        free(logp), workspace_free(&w, m), batch_free(&b), work_free(work);
    }
}

static void test_logp(void **state) {
    (void)state;
    Model m = random_model(2, VOCAB, 2, 0.3, 3);
    check_logp(&m);
    model_free(&m);
    for (int v = 1; v < VARIANTS; v++) {
        m = variant_model(v, 0.3, 20 + (uint64_t)v);
        check_logp(&m);
        model_free(&m);
    }
}

/* ==== Reproducibility of samples ==== */

static void test_independence(void **state) {
    (void)state;
    Error e;
    Model m = random_model(2, VOCAB, 4, 0.3, 4);
    Sampling s = sampling(1);
    s.top_p = 0.9f;
    s.stop[0] = 5;
    s.stops = 1;
    Work *a = work_new(3, REQUESTS, VOCAB, 6), *b = work_new(3, REQUESTS, VOCAB, 6);
    run(&m, 7, &s, a);
    static const int slots[] = {1, 3, 200};
    for (int k = 0; k < 3; k++) { /* slots */
        run(&m, slots[k], &s, b);
        assert_same(a, b, 2e-5);
        work_clear(b);
    }
    const int threads = omp_get_max_threads();
    omp_set_num_threads(threads == 1 ? 2 : 1); /* threads */
    run(&m, 7, &s, b);
    omp_set_num_threads(threads);
    assert_same(a, b, 2e-5);
    work_clear(b);
    for (int i = 0; i < REQUESTS / 2; i++) { /* reversed order */
        const RolloutRequest q = b->request[i];
        b->request[i] = b->request[REQUESTS - 1 - i];
        b->request[REQUESTS - 1 - i] = q;
    }
    run(&m, 5, &s, b);
    assert_same(a, b, 2e-5);
    work_clear(b);
    Rollout r; /* batch mates: one request after the other, in a reused engine; samples one by one */
    assert_true(rollout_new(&r, &m, 4, PROMPT, NEW, &e));
    for (int i = 0; i < REQUESTS; i++)
        for (int k = 0; k < b->request[i].samples; k++) {
            RolloutRequest one = b->request[i];
            one.out += k;
            one.id += (uint64_t)k;
            one.samples = 1;
            assert_true(rollout_run(&r, &s, &one, 1, NULL, NULL, &e));
        }
    assert_same(a, b, 2e-5);
    rollout_free(&r);
    work_clear(b);
    int differ = 0;
    s.seed++; /* another seed or stream gives other samples */
    run(&m, 7, &s, b);
    for (int i = 0; i < a->samples; i++)
        differ += a->out[i].count != b->out[i].count ||
                  memcmp(a->out[i].tokens, b->out[i].tokens, (size_t)a->out[i].count * 4);
    assert_true(differ > a->samples / 2);
    work_clear(b);
    s.seed--;
    s.stream = RANDOM_EVAL;
    run(&m, 7, &s, b);
    differ = 0;
    for (int i = 0; i < a->samples; i++)
        differ += a->out[i].count != b->out[i].count ||
                  memcmp(a->out[i].tokens, b->out[i].tokens, (size_t)a->out[i].count * 4);
    assert_true(differ > a->samples / 2);
    /* the samples of one request differ from each other */
    differ = 0;
    for (int i = 0; i < REQUESTS; i++) {
        const RolloutRequest *q = &a->request[i];
        for (int k = 1; k < q->samples; k++)
            differ += q->out[k].count != q->out[0].count ||
                      memcmp(q->out[k].tokens, q->out[0].tokens, (size_t)q->out[0].count * 4);
    }
    assert_true(differ > (a->samples - REQUESTS) / 2);
    work_free(a), work_free(b), model_free(&m);
}

/* An engine whose model is trained between runs samples from the new weights. */
static void test_new_weights(void **state) {
    (void)state;
    Error e;
    Model m = random_model(2, VOCAB, 4, 0.3, 5), other = random_model(2, VOCAB, 4, 0.3, 6);
    Sampling s = sampling(1);
    Work *a = work_new(4, 10, VOCAB, 3), *b = work_new(4, 10, VOCAB, 3);
    run(&other, 4, &s, a);
    Rollout r;
    assert_true(rollout_new(&r, &m, 4, PROMPT, NEW, &e));
    assert_true(rollout_run(&r, &s, b->request, b->n, NULL, NULL, &e));
    work_clear(b);
    float *host = xmalloc(m.parameters * sizeof *host);
    B->weights_download(D, host, other.weights, m.parameters);
    B->weights_upload(D, m.weights, host, m.parameters);
    assert_true(rollout_run(&r, &s, b->request, b->n, NULL, NULL, &e));
    assert_same(a, b, 0);
    free(host), rollout_free(&r), work_free(a), work_free(b), model_free(&m), model_free(&other);
}

/* ==== Frequencies ==== */

/* The sampling distribution by the rule of backend.h, in float64. */
static void kept_distribution(const Sampling *s, const float *logits, const int32_t *seen, int n, int V, double *p) {
    double y[VOCAB], max = -INFINITY, all = 0, sum = 0;
    bool kept[VOCAB];
    for (int v = 0; v < V; v++) y[v] = logits[v];
    if (s->repetition_penalty == 1) n = 0;
    for (int i = 0; i < n; i++)
        y[seen[i]] = logits[seen[i]] > 0 ? (double)logits[seen[i]] / s->repetition_penalty
                                         : (double)logits[seen[i]] * s->repetition_penalty;
    for (int v = 0; v < V; v++) {
        y[v] /= s->temperature;
        max = fmax(max, y[v]);
    }
    for (int v = 0; v < V; v++) {
        int above = 0;
        for (int o = 0; o < V; o++) above += y[o] > y[v];
        kept[v] = s->top_k == 0 || above < s->top_k;
        all += kept[v] ? exp(y[v] - max) : 0;
    }
    for (int v = 0; v < V; v++) {
        double above = 0;
        for (int o = 0; o < V; o++) above += kept[o] && y[o] > y[v] ? exp(y[o] - max) / all : 0;
        p[v] = kept[v] && (above == 0 || above < (double)s->top_p) && exp(y[v] - max) >= (double)s->min_p
                   ? exp(y[v] - max)
                   : 0;
        sum += p[v];
    }
    for (int v = 0; v < V; v++) p[v] /= sum;
}

/* (chi2 - df) / sqrt(2 df), with cells that expect fewer than 5 merged. Tokens of probability 0 must not occur. */
static double chi_square(const int *count, const double *p, int V, int n) {
    double chi = 0, rest = 0;
    int df = -1, rest_count = 0;
    for (int v = 0; v < V; v++) {
        if (p[v] == 0 && count[v]) fail_msg("token %d has probability 0 and was drawn %d times", v, count[v]);
        if (p[v] * n < 5) {
            rest += p[v] * n;
            rest_count += count[v];
            continue;
        }
        chi += (count[v] - p[v] * n) * (count[v] - p[v] * n) / (p[v] * n);
        df++;
    }
    if (rest >= 5) {
        chi += (rest_count - rest) * (rest_count - rest) / rest;
        df++;
    } else assert_true(rest_count < 30);
    return df > 0 ? (chi - df) / sqrt(2.0 * df) : 0;
}

static void test_frequencies(void **state) {
    (void)state;
    Error e;
    enum { V = 11, EACH = 500, RUNS = 40, N = EACH * RUNS };
    Model m = random_model(1, V, 4, 0.15, 7);
    static const struct {
        float temperature, top_p, min_p, penalty;
        int top_k;
    } how[] = {{1, 1, 0, 1, 0},    {0.5f, 1, 0, 1, 0}, {1, 1, 0, 1, 4},
               {1, 0.7f, 0, 1, 0}, {1, 1, 0.3f, 1, 0}, {1.4f, 0.9f, 0.05f, 1.3f, 8}};
    const int32_t prompt[] = {3, 1, 4, 1, 5};
    const int n = sizeof prompt / sizeof *prompt;
    Workspace w;
    Batch b = batch_new(CONTEXT, 1, 1);
    Rollout r;
    assert_true(workspace_new(&w, &m, CONTEXT, 1, 1, false, 0, &e));
    assert_true(rollout_new(&r, &m, 256, n, 2, &e));
    Completion *out = xcalloc(N, sizeof *out);
    for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
        Sampling s = sampling(how[k].temperature);
        s.top_p = how[k].top_p;
        s.min_p = how[k].min_p;
        s.top_k = how[k].top_k;
        s.repetition_penalty = how[k].penalty;
        s.max_new = 2;
        s.seed = k;
        RolloutRequest request[RUNS];
        for (int i = 0; i < RUNS; i++)
            request[i] = (RolloutRequest){
                .prompt = prompt, .prompt_len = n, .samples = EACH, .id = (uint64_t)(i * EACH), .out = out + i * EACH};
        assert_true(rollout_run(&r, &s, request, RUNS, NULL, NULL, &e));
        int first[V] = {0}, second[V][V] = {{0}};
        for (int i = 0; i < N; i++) {
            assert_int_equal(out[i].count, 2);
            first[out[i].tokens[0]]++;
            second[out[i].tokens[0]][out[i].tokens[1]]++;
            completion_free(&out[i]);
        }
        float logits[V];
        double p[V];
        int32_t seen[8];
        memcpy(seen, prompt, sizeof prompt);
        next_distribution(&m, &w, &b, prompt, n, logits);
        kept_distribution(&s, logits, prompt, n, V, p);
        const double z = chi_square(first, p, V, N);
        if (!(fabs(z) < 4)) fail_msg("setting %zu: first token, chi-square is %g deviations off", k, z);
        for (int v = 0; v < V; v++) {
            if (first[v] < 100) continue;
            seen[n] = v;
            next_distribution(&m, &w, &b, seen, n + 1, logits);
            kept_distribution(&s, logits, seen, n + 1, V, p);
            const double z2 = chi_square(second[v], p, V, first[v]);
            if (!(fabs(z2) < 4.5))
                fail_msg("setting %zu: second token after %d, chi-square is %g deviations off", k, v, z2);
        }
    }
    free(out), rollout_free(&r), workspace_free(&w, &m), batch_free(&b), model_free(&m);
}

/* ==== Ends and limits ==== */

typedef struct Seen {
    int64_t n;
    int32_t token[8 * REQUESTS][NEW];
    int count[8 * REQUESTS];
    const Work *work;
} Seen;

static void watch(void *context, int64_t request, int32_t sample, int32_t token) {
    Seen *s = context;
    const int i = (int)(s->work->request[request].out - s->work->out) + sample;
    s->token[i][s->count[i]++] = token;
    s->n++;
}

static void test_stop_and_watch(void **state) {
    (void)state;
    Error e;
    Model m = random_model(2, VOCAB, 4, 0.2, 8);
    Sampling s = sampling(1);
    for (int i = 0; i < 4; i++) s.stop[s.stops++] = 3 * i + 1;
    Work *w = work_new(5, REQUESTS, VOCAB, 5);
    Seen *seen = xcalloc(1, sizeof *seen);
    seen->work = w;
    Rollout r;
    assert_true(rollout_new(&r, &m, 6, PROMPT, NEW, &e));
    assert_true(rollout_run(&r, &s, w->request, w->n, watch, seen, &e));
    int finished = 0;
    for (int i = 0; i < w->samples; i++) {
        const Completion *c = &w->out[i];
        assert_int_equal(seen->count[i], c->count);
        assert_memory_equal(seen->token[i], c->tokens, (size_t)c->count * sizeof(int32_t));
        for (int k = 0; k < c->count; k++) {
            const int t = c->tokens[k];
            const bool stop = t == 1 || t == 4 || t == 7 || t == 10;
            assert_true(stop == (c->finished && k == c->count - 1));
            assert_true(t >= 0 && t < VOCAB && isfinite(c->logp[k]) && c->logp[k] <= 0);
        }
        assert_true(c->finished || c->count == NEW);
        finished += c->finished;
    }
    assert_true(finished > 10 && finished < w->samples);
    assert_int_equal(seen->n, r.tokens);
    free(seen), work_free(w), rollout_free(&r), model_free(&m);
}

/* max_new, the engine's new_max and the end of the context each truncate a completion. */
static void test_limits(void **state) {
    (void)state;
    Error e;
    Model m = random_model(2, VOCAB, 4, 0.2, 9);
    Rollout r;
    assert_true(rollout_new(&r, &m, 3, CONTEXT + 5, NEW, &e));
    int32_t prompt[CONTEXT + 5] = {0};
    Completion out[2];
    static const struct {
        int length, max_new, expected;
    } how[] = {{5, 1, 1},
               {5, 3, 3},
               {5, NEW, NEW},
               {5, 1000, NEW},
               {CONTEXT - NEW, 1000, NEW},
               {CONTEXT - NEW + 1, 1000, NEW - 1},
               {CONTEXT - 2, 1000, 2},
               {CONTEXT - 1, 1000, 1},
               {1, 2, 2}};
    for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
        Sampling s = sampling(1);
        s.max_new = how[k].max_new;
        RolloutRequest q = {.prompt = prompt, .prompt_len = how[k].length, .samples = 2, .id = 5, .out = out};
        if (!rollout_run(&r, &s, &q, 1, NULL, NULL, &e)) fail_msg("%s", e.text);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(out[i].count, how[k].expected);
            assert_false(out[i].finished);
            completion_free(&out[i]);
        }
    }
    /* a stop token at the limit still finishes the completion */
    Sampling s = sampling(1);
    s.max_new = 1;
    s.stops = 1;
    RolloutRequest q = {.prompt = prompt, .prompt_len = 3, .samples = 1, .id = 5, .out = out};
    assert_true(rollout_run(&r, &s, &q, 1, NULL, NULL, &e));
    s.stop[0] = out[0].tokens[0];
    completion_free(&out[0]);
    assert_true(rollout_run(&r, &s, &q, 1, NULL, NULL, &e));
    assert_true(out[0].finished && out[0].count == 1);
    completion_free(&out[0]);
    rollout_free(&r), model_free(&m);
}

static void test_errors(void **state) {
    (void)state;
    Model m = random_model(1, VOCAB, 4, 0.2, 10);
    Error e = {""};
    Rollout r;
    assert_true(rollout_new(&r, &m, 2, 10, NEW, &e));
    int32_t prompt[CONTEXT + 2] = {0}, foreign[3] = {1, VOCAB, 2}, negative[1] = {-1};
    Completion good[2] = {{0}}, untouched = {.count = 77};
    const struct {
        RolloutRequest q;
        const char *message;
    } bad[] = {{{.prompt = prompt, .samples = 1, .out = &untouched}, "prompt 2: it is empty"},
               {{.prompt = prompt, .prompt_len = -1, .samples = 1, .out = &untouched}, "prompt 2: it is empty"},
               {{.prompt = prompt, .prompt_len = 11, .samples = 1, .out = &untouched},
                "prompt 2: it has 11 tokens, at most 10 fit (context 48)"},
               {{.prompt = prompt, .prompt_len = 1, .samples = 100000, .out = &untouched},
                "prompt 2: 100000 samples, at most "},
               {{.prompt = foreign, .prompt_len = 3, .samples = 1, .out = &untouched},
                "prompt 2: token 29 is outside the vocabulary of 29"},
               {{.prompt = negative, .prompt_len = 1, .samples = 1, .out = &untouched},
                "prompt 2: token -1 is outside the vocabulary of 29"}};
    Sampling s = sampling(1);
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        RolloutRequest q[2] = {{.prompt = prompt, .prompt_len = 3, .samples = 2, .out = good}, bad[k].q};
        assert_false(rollout_run(&r, &s, q, 2, NULL, NULL, &e));
        if (!strstr(e.text, bad[k].message)) fail_msg("\"%s\", expected \"%s\"", e.text, bad[k].message);
        assert_true(good[0].tokens == NULL && untouched.count == 77 && untouched.tokens == NULL);
    }
    s.max_new = 0;
    RolloutRequest q = {.prompt = prompt, .prompt_len = 3, .samples = 2, .out = good};
    assert_false(rollout_run(&r, &s, &q, 1, NULL, NULL, &e));
    assert_string_equal(e.text, "completions of at most 0 tokens, expected at least 1");
    s.max_new = 3;
    assert_true(rollout_run(&r, &s, NULL, 0, NULL, NULL, &e)); /* an empty run */
    assert_true(rollout_run(&r, &s, &q, 1, NULL, NULL, &e));   /* and the engine continues to work */
    completion_free(&good[0]), completion_free(&good[1]);
    rollout_free(&r);
    assert_true(rollout_new(&r, &m, 2, CONTEXT + 2, NEW, &e)); /* it fits the engine but not the context */
    q.prompt_len = CONTEXT;
    assert_false(rollout_run(&r, &s, &q, 1, NULL, NULL, &e));
    assert_non_null(strstr(e.text, "it has 48 tokens, at most 47 fit (context 48)"));
    rollout_free(&r), model_free(&m);
}

/* Requests for no samples do not affect the others' prompts. */
static void test_no_samples(void **state) {
    (void)state;
    Model m = random_model(2, VOCAB, 4, 0.3, 11);
    Sampling s = sampling(1);
    Work *a = work_new(6, 12, VOCAB, 3), *b = work_new(6, 12, VOCAB, 3);
    for (int i = 0; i < 12; i += 3) a->request[i].samples = b->request[i].samples = 0;
    run(&m, 1, &s, a);
    run(&m, 50, &s, b);
    assert_same(a, b, 2e-5);
    Error e;
    Rollout r;
    RolloutRequest none = {.prompt = a->prompt[0], .prompt_len = 1};
    assert_true(rollout_new(&r, &m, 2, PROMPT, NEW, &e) && rollout_run(&r, &s, &none, 1, NULL, NULL, &e));
    assert_int_equal(r.steps, 0);
    rollout_free(&r), work_free(a), work_free(b), model_free(&m);
}

/* The maximum number of samples of one prompt with few slots: samples wait for a slot. */
static void test_large_group(void **state) {
    (void)state;
    Error e;
    Model m = random_model(1, VOCAB, 4, 0.3, 12);
    enum { MANY = 512 };
    Completion *a = xcalloc(MANY, sizeof *a), *b = xcalloc(MANY, sizeof *b);
    const int32_t prompt[] = {1, 2, 3};
    Sampling s = sampling(1);
    s.max_new = 4;
    Rollout few, many;
    assert_true(rollout_new(&few, &m, 3, 3, 4, &e) && rollout_new(&many, &m, 600, 3, 4, &e));
    RolloutRequest qa = {.prompt = prompt, .prompt_len = 3, .samples = MANY, .out = a},
                   qb = {.prompt = prompt, .prompt_len = 3, .samples = MANY, .out = b};
    assert_true(rollout_run(&few, &s, &qa, 1, NULL, NULL, &e) && rollout_run(&many, &s, &qb, 1, NULL, NULL, &e));
    assert_int_equal(many.steps, 4); /* all at once */
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(a[i].count, 4);
        assert_memory_equal(a[i].tokens, b[i].tokens, 4 * sizeof(int32_t));
        completion_free(&a[i]), completion_free(&b[i]);
    }
    free(a), free(b), rollout_free(&few), rollout_free(&many), model_free(&m);
}

/* ==== Memory ==== */

static size_t counted, limit = SIZE_MAX;

static void *counting_alloc(Device *d, size_t bytes, const char *what, Error *e) {
    if (counted + bytes > limit) {
        error_set(e, "out of memory: %zu bytes for %s", bytes, what);
        return NULL;
    }
    counted += bytes;
    return backend_cpu()->alloc(d, bytes, what, e);
}

static void *counting_zeroed(Device *d, size_t bytes, const char *what, Error *e) {
    void *memory = counting_alloc(d, bytes, what, e);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

static void test_memory(void **state) {
    (void)state;
    Error e = {""};
    Model m = random_model(2, VOCAB, 2, 0.3, 13);
    Backend counting = *backend_cpu();
    counting.alloc = counting_alloc;
    counting.alloc_zeroed = counting_zeroed;
    m.backend = &counting;
    Rollout r;
    counted = 0;
    assert_true(rollout_new(&r, &m, 8, PROMPT, NEW, &e));
    const size_t all = counted;
    assert_int_equal(all, rollout_bytes(&m.config, &counting, 8, PROMPT, NEW));
    Work *w = work_new(7, 5, VOCAB, 2);
    Sampling s = sampling(1);
    assert_true(rollout_run(&r, &s, w->request, w->n, NULL, NULL, &e));
    assert_int_equal(counted, all); /* no step allocates */
    work_clear(w);
    rollout_free(&r);
    for (size_t part = 0; part < 2; part++) {
        counted = 0;
        limit = part ? all - 1 : 100;
        assert_false(rollout_new(&r, &m, 8, PROMPT, NEW, &e));
        assert_non_null(strstr(e.text, part ? "key/value cache" : "activations"));
        rollout_free(&r); /* harmless */
    }
    counted = 0;
    limit = all; /* no memory for the history of the repetition penalty */
    assert_true(rollout_new(&r, &m, 8, PROMPT, NEW, &e));
    s.repetition_penalty = 2;
    assert_false(rollout_run(&r, &s, w->request, w->n, NULL, NULL, &e));
    assert_non_null(strstr(e.text, "token history"));
    work_clear(w);
    limit = SIZE_MAX;
    assert_true(rollout_run(&r, &s, w->request, w->n, NULL, NULL, &e));
    rollout_free(&r), work_free(w);
    m.backend = B;
    model_free(&m);
}

/* A sequence that outgrows its cache: its log-probabilities are those of an uncached pass over all tokens. */
static void test_long_sequence(void **state) {
    (void)state;
    enum { LONG = SEQUENCE_CACHE + 12, START = SEQUENCE_CACHE - 6 };
    Error e;
    ModelConfig c = gpt2_config(2, 4, 32, VOCAB, LONG + 5);
    variant_of(&c, 1);
    Model m = model_of(c, 0.3, 30);
    Sequence s;
    Random r = random_start(31, 0);
    int32_t tokens[LONG];
    float logp[LONG], same[LONG];
    for (int i = 0; i < START; i++) tokens[i] = (int32_t)random_below(&r, VOCAB);
    assert_true(sequence_new(&s, &m, 1 << 20, &e));
    assert_int_equal(s.capacity, LONG + 5);
    sequence_set(&s, tokens, START);
    const Sampling how = sampling(1);
    for (int i = START; i < LONG; i++) assert_true(sequence_draw(&s, &how, 0, &tokens[i], &logp[i], &e));
    assert_true(s.kv.rows >= LONG && s.kv.rows <= LONG + 5);
    Batch b = batch_new(LONG, LONG, 1);
    Workspace w;
    assert_true(workspace_new(&w, &m, LONG, LONG, 1, false, 0, &e));
    batch_segment(&b, tokens, LONG, 0, -1);
    for (int i = START; i < LONG; i++) batch_target(&b, i - 1, tokens[i]);
    model_forward(&m, &w, &b, 1, &(ModelOutput){.logp = same});
    for (int i = START; i < LONG; i++) assert_true(fabs(logp[i] - same[i - START]) < 1e-4);
    workspace_free(&w, &m), batch_free(&b), sequence_free(&s), model_free(&m);
}

/* The FLOPs of a run, 2 for each multiply-add: GPT-2's 12 C^2 weights of a layer for each token that is read, the output matrix
 * for each that is drawn, and scores and values for each pair of a query with a key. The prompt is read once, and the last token of
 * a completion by nobody. Another run adds to them. */
static void test_flops(void **state) {
    (void)state;
    Error e;
    Rollout r;
    Sampling s = sampling_default();
    Model m = random_model(2, VOCAB, 4, 0.2, 9);
    const ModelConfig *c = &m.config;
    Work *w = work_new(4, 9, VOCAB, 4);
    double flops = 0, rows = 0, drawn = 0, pairs = 0;
    s.max_new = NEW;
    if (!rollout_new(&r, &m, 3, PROMPT, NEW, &e)) fail_msg("%s", e.text);
    r.flops = &flops;
    if (!rollout_run(&r, &s, w->request, w->n, NULL, NULL, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < w->n; i++) {
        const RolloutRequest *q = &w->request[i];
        const double P = q->prompt_len;
        rows += P;
        pairs += P * (P + 1) / 2;
        for (int k = 0; k < q->samples; k++) {
            const double n = q->out[k].count;
            rows += n - 1;
            drawn += n;
            pairs += (n - 1) * P + (n - 1) * n / 2;
        }
    }
    const double layers = c->layers * (12.0 * c->width * c->width * rows + 2 * pairs * c->width);
    const double expected = 2 * (layers + drawn * c->width * c->padded_vocab);
    assert_true(fabs(flops - expected) < 1e-9 * expected);
    work_clear(w);
    if (!rollout_run(&r, &s, w->request, w->n, NULL, NULL, &e)) fail_msg("%s", e.text);
    assert_true(fabs(flops - 2 * expected) < 1e-9 * expected);
    work_free(w), rollout_free(&r), model_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),        cmocka_unit_test(test_logp),        cmocka_unit_test(test_independence),
        cmocka_unit_test(test_new_weights),   cmocka_unit_test(test_frequencies), cmocka_unit_test(test_stop_and_watch),
        cmocka_unit_test(test_limits),        cmocka_unit_test(test_errors),      cmocka_unit_test(test_no_samples),
        cmocka_unit_test(test_large_group),   cmocka_unit_test(test_flops),       cmocka_unit_test(test_memory),
        cmocka_unit_test(test_long_sequence),
    };
    return cmocka_run_group_tests_name("rollout", tests, open_device_one_thread, close_device);
}
