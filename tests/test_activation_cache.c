/* test_activation_cache.c - training passes over the activations that the sampler kept, against the sampler itself, bit for
 * bit, and against passes that run the layers, within the rounding of their products; in float32 and in bfloat16. */
#include "../llmc/base/error.h"        /* Error, xmalloc, xcalloc */
#include "../llmc/base/random.h"       /* Random, random_below, random_start, random_normal */
#include "../llmc/cpu/cpu.h"           /* backend_cpu_for */
#include "../llmc/model/acts_cache.h"  /* ActivationCache, activation_cache_free, activation_cache_new, ... */
#include "../llmc/model/backend.h"     /* DTYPE_BF16, Backend, Device, Draw */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/config.h"      /* LORA_ALL, LoraConfig, ModelConfig, gpt2_config */
#include "../llmc/model/decode.h"      /* DecodeStep, model_decode */
#include "../llmc/model/model.h"       /* Model, model_free, model_new, model_settle_grads, ... */
#include "../llmc/model/pack.h"        /* batch_clear, batch_completion, batch_free, batch_new, ... */
#include "../llmc/model/tensors.h"     /* INIT_ONE, TENSOR_COUNT */
#include "../llmc/model/transformer.h" /* ModelOutput, model_backward, model_forward */
#include "../llmc/model/workspace.h"   /* Workspace, WORK_h, work_acts, KVCache, ... */
#include "../llmc/rollout/rollout.h"   /* RolloutRequest, rollout_free, Rollout, rollout_activation_rows, ... */
#include "cpu_device.h"                /* B, D, close_device, open_device_one_thread */
#include "variants.h"                  /* VARIANTS, variant_of */

enum { VOCAB = 29, CONTEXT = 48, NEW = 14, PROMPT = 20, REQUESTS = 9, SAMPLES = 5, ROWS = 1024, BATCHES = 2 };
enum { ADAPTED = VARIANTS + 1, ADAPTED_DORA, KINDS }; /* after GPT-2 and the variants */

static bool half; /* the device is one for bfloat16 */

static Model model_of_kind(int kind) {
    Error e;
    Model m;
    ModelConfig c = gpt2_config(3, 4, 32, VOCAB, CONTEXT);
    if (kind && kind <= VARIANTS) variant_of(&c, kind - 1);
    if (kind >= ADAPTED) c.lora = (LoraConfig){.rank = 3, .targets = LORA_ALL, .scale = 0.7f};
    c.lora.dora = kind == ADAPTED_DORA;
    if (!model_new(&m, &c, B, D, true, &e)) fail_msg("%s", e.text);
    Random r = random_start(11, (uint64_t)kind);
    float *host = (float *)xmalloc(m.parameters * sizeof *host);
    for (size_t i = 0; i < m.parameters; i++) host[i] = (float)(0.2 * random_normal(&r));
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (size_t k = 0; m.tensor[i].init == INIT_ONE && k < m.tensor[i].size; k++) host[m.tensor[i].offset + k] += 1;
    model_upload(&m, 0, host, m.parameters);
    free(host);
    return m;
}

/* Requests, their completions, and what the sampler had before the head for each token: h (REQUESTS, SAMPLES, NEW, C). */
typedef struct Work {
    const Model *m;
    int32_t prompt[REQUESTS][PROMPT];
    RolloutRequest request[REQUESTS];
    Completion out[REQUESTS][SAMPLES];
    Rollout engine;
    ActivationCache cache;
    char *h;
    size_t row; /* bytes of a row of h */
} Work;

static char *h_of(const Work *w, int request, int sample, int token) {
    return w->h + (((size_t)request * SAMPLES + (size_t)sample) * NEW + (size_t)token) * w->row;
}

/* Decodes, and keeps the head's input of every token that is drawn. */
static void keep_h(void *work, const Model *m, const Workspace *space, const KVCache *kv, const Batch *batch, Draw how,
                   const DecodeStep *step) {
    Work *w = (Work *)work;
    model_decode(m, space, kv, batch, how, step);
    for (int t = 0; t < batch->targets; t++) {
        const RolloutSlot *who = &w->engine.target[t];
        char *h = h_of(w, (int)who->request, who->sample, w->out[who->request][who->sample].count);
        B->download(D, h, (char *)work_acts(space, WORK_h, 0) + (size_t)t * w->row, w->row);
    }
}

/* Samples completions of different lengths in fewer slots than there are samples. Request 4 has no place in the cache. */
static Work *sample(const Model *m, int recompute) {
    Error e;
    Work *w = (Work *)xcalloc(1, sizeof *w);
    Random r = random_start(5, 1);
    int64_t rows = 0;
    w->m = m;
    w->row = (size_t)m->config.width * B->act_size;
    w->h = (char *)xcalloc(REQUESTS * SAMPLES * NEW, w->row);
    for (int i = 0; i < REQUESTS; i++) {
        const int length = 1 + (int)random_below(&r, PROMPT), samples = 1 + i % SAMPLES;
        for (int k = 0; k < length; k++) w->prompt[i][k] = (int32_t)random_below(&r, VOCAB);
        w->request[i] = (RolloutRequest){.prompt = w->prompt[i],
                                         .prompt_len = length,
                                         .samples = samples,
                                         .id = (uint64_t)i * SAMPLES,
                                         .out = w->out[i],
                                         .activations = i == 4 ? 0 : rows + 1};
        if (i != 4) rows += rollout_activation_rows(length, samples, NEW);
    }
    Sampling how = sampling_default();
    how.max_new = NEW;
    how.seed = 3;
    how.stop[how.stops++] = 7;
    if (!rollout_new_with(&w->engine, m, 6, PROMPT, NEW, true, &e) ||
        !activation_cache_new(&w->cache, m, recompute, rows, &e))
        fail_msg("%s", e.text);
    rollout_cache(&w->engine, &w->cache);
    w->engine.decode = keep_h;
    w->engine.decode_context = w;
    if (!rollout_run(&w->engine, &how, w->request, REQUESTS, NULL, NULL, &e)) fail_msg("%s", e.text);
    return w;
}

static void work_free(Work *w) {
    for (int i = 0; i < REQUESTS; i++)
        for (int k = 0; k < w->request[i].samples; k++) completion_free(&w->out[i][k]);
    activation_cache_free(&w->cache, w->m);
    rollout_free(&w->engine);
    free(w->h), free(w);
}

/* Packs the completions of requests first, first + 2, ..., but not of request 4, and their rows of the cache. The samples of
 * a request are in the reverse order. */
static void pack(const Work *w, int first, Batch *b, int32_t *row) {
    batch_clear(b);
    for (int i = first; i < REQUESTS; i += BATCHES) {
        const RolloutRequest *q = &w->request[i];
        if (!q->activations) continue;
        const int prompt = batch_segment(b, q->prompt, q->prompt_len, 0, -1);
        int n = b->rows - q->prompt_len;
        for (int k = 0; k < q->prompt_len; k++) row[n++] = (int32_t)q->activations - 1 + k;
        for (int k = q->samples - 1; k >= 0; k--) {
            const int64_t at = q->activations - 1 + rollout_activation_rows(q->prompt_len, k, NEW);
            batch_completion(b, prompt, w->out[i][k].tokens, NULL, w->out[i][k].count);
            for (int t = 0; t < w->out[i][k].count - 1; t++) row[n++] = (int32_t)at + t;
        }
        assert_int_equal(n, b->rows);
    }
}

/* A forward pass and a backward pass with gradients of log-probabilities and of entropies. */
static void pass(const Model *m, const Workspace *w, const Batch *b, float *logp, float *entropy, float *grads) {
    float *dlogp = (float *)xmalloc(ROWS * sizeof *dlogp), *dentropy = (float *)xmalloc(ROWS * sizeof *dentropy);
    for (int i = 0; i < b->targets; i++) {
        dlogp[i] = (float)(i % 5 - 2) / 8;
        dentropy[i] = (float)(i % 3) / 16;
    }
    model_zero_grads(m);
    model_forward(m, w, b, 1, &(ModelOutput){.logp = logp, .entropy = entropy});
    model_backward(m, w, b, 1, dlogp, dentropy, NULL);
    model_settle_grads(m);
    B->download(D, grads, m->grads, m->grads_count * sizeof *grads);
    free(dlogp), free(dentropy);
}

/* The head's input is the sampler's to the bit. */
static void check_bits(const Work *w, const Workspace *space, int first) {
    const char *h = (const char *)work_acts(space, WORK_h, 0);
    for (int i = first; i < REQUESTS; i += BATCHES)
        for (int k = w->request[i].samples - 1; k >= 0 && w->request[i].activations; k--)
            for (int t = 0; t < w->out[i][k].count; t++, h += w->row)
                if (memcmp(h, h_of(w, i, k, t), w->row)) fail_msg("request %d, sample %d, token %d differs", i, k, t);
}

/* sqrt(sum (a - b)^2 / sum a^2) */
static double distance(const float *a, const float *b, size_t n) {
    double apart = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        apart += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        all += (double)a[i] * a[i];
    }
    assert_true(all > 0);
    return sqrt(apart / all);
}

/* Against a pass that runs the layers. Both round the same numbers after sums in other orders. Three layers round about ten
 * times each in either direction, by at most 2^-24 of a value in float32 and 2^-9 in bfloat16: 60 times that. */
static void check_kind(int kind, int recompute) {
    Error e;
    const double close = 60.0 / (half ? 1 << 9 : 1 << 24);
    Model m = model_of_kind(kind);
    Work *w = sample(&m, recompute);
    Batch b = batch_new(ROWS, ROWS, 64);
    Workspace space;
    int32_t row[ROWS];
    float *logp = (float *)xmalloc(4 * ROWS * sizeof *logp), *entropy = logp + 2 * ROWS;
    float *grads = (float *)xmalloc(2 * m.grads_count * sizeof *grads);
    if (!workspace_new(&space, &m, ROWS, ROWS, 64, true, recompute, &e)) fail_msg("%s", e.text);
    for (int first = 0; first < BATCHES; first++) {
        pack(w, first, &b, row);
        const Workspace cached = activation_cache_work(&space, &w->cache, row);
        pass(&m, &cached, &b, logp, entropy, grads);
        check_bits(w, &space, first);
        pass(&m, &space, &b, logp + ROWS, entropy + ROWS, grads + m.grads_count);
        const double gap = distance(grads + m.grads_count, grads, m.grads_count);
        if (!(gap < close)) fail_msg("kind %d, recompute %d: gradients differ by %g", kind, recompute, gap);
        for (int t = 0; t < b.targets; t++) {
            assert_true(fabs(logp[t] - logp[ROWS + t]) < (half ? 0.1 : 1e-4));
            assert_true(fabs(entropy[t] - entropy[ROWS + t]) < (half ? 0.1 : 1e-4));
        }
    }
    free(logp), free(grads);
    workspace_free(&space, &m), batch_free(&b), work_free(w), model_free(&m);
}

static void passes_over_cached_rows(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; kind++)
        for (int recompute = 0; recompute < 3; recompute++) check_kind(kind, recompute);
}

/* The cache and the workspace of an engine that fills it take the bytes that are predicted. */
static size_t counted;

static void *counting_zeroed(Device *d, size_t bytes, const char *what, Error *e) {
    counted += bytes;
    return B->alloc_zeroed(d, bytes, what, e);
}

static void bytes_are_predicted(void **state) {
    (void)state;
    Error e;
    Backend counting = *B;
    counting.alloc_zeroed = counting_zeroed;
    for (int kind = 0; kind < KINDS; kind++) {
        Model m = model_of_kind(kind);
        Rollout plain, caching;
        ActivationCache cache;
        m.backend = &counting;
        counted = 0;
        assert_true(rollout_new(&plain, &m, 5, PROMPT, NEW, &e));
        const size_t without = counted;
        counted = 0;
        assert_true(rollout_new_with(&caching, &m, 5, PROMPT, NEW, true, &e));
        assert_int_equal(counted, without + rollout_caching_bytes(&m.config, B, 5, PROMPT));
        counted = 0;
        assert_true(activation_cache_new(&cache, &m, 1, 100, &e));
        assert_int_equal(counted, activation_cache_bytes(&m.config, B, 1, 100));
        rollout_free(&plain), rollout_free(&caching), activation_cache_free(&cache, &m);
        m.backend = B;
        model_free(&m);
    }
}

static int open_half(void **state) {
    (void)state;
    Error e;
    half = true;
    B = backend_cpu_for(DTYPE_BF16);
    if (B->open(&D, DTYPE_BF16, &e)) return 0;
    print_error("%s\n", e.text);
    return 1;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(passes_over_cached_rows),
                                       cmocka_unit_test(bytes_are_predicted)};
    int failed = cmocka_run_group_tests_name("activation cache, float32", tests, open_device_one_thread, close_device);
    failed += cmocka_run_group_tests_name("activation cache, bfloat16", tests, open_half, close_device);
    return failed;
}
