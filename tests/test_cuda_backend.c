/* test_cuda_backend.c - the whole `--device cuda` path against the CPU's.
 *
 * Covers a model forward and backward, optimizer steps, sampling from a cache, training states, and the programs.
 * Without a GPU the library is the CUDA backend compiled for the processor (build/llmc_cuda_host.so); LLMC_CUDA_LIBRARY
 * names another. Needs the programs and data/make_shard. */
#include "../llmc/base/error.h"        /* Error, xmalloc, xstrdup */
#include "../llmc/base/random.h"       /* random_normal, Random, random_start, random_below */
#include "../llmc/cpu/cpu.h"           /* backend_cpu */
#include "../llmc/device.h"            /* DEVICE_CUDA, backend_open */
#include "../llmc/model/backend.h"     /* DTYPE_BF16, Backend, Device, DTYPE_FLOAT32, ... */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/config.h"      /* ModelConfig, LORA_ALL, FAMILY_GPT2, FAMILY_LLAMA, ... */
#include "../llmc/model/model.h"       /* Model, model_free, model_sync, model_init, ... */
#include "../llmc/model/model_file.h"  /* model_load, model_save */
#include "../llmc/model/model_load.h"  /* model_file_free, ModelFile */
#include "../llmc/model/optimizer.h"   /* optimizer_free, Optimizer, optimizer_new, OptimizerResult, ... */
#include "../llmc/model/pack.h"        /* batch_completion, batch_free, batch_new, batch_segment, ... */
#include "../llmc/model/tensors.h"     /* TENSOR_COUNT, BASE_TENSORS, TENSOR_headw, TENSOR_wte, ... */
#include "../llmc/model/transformer.h" /* ModelOutput, model_forward, model_backward, model_forward_backward */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "../llmc/rollout/rollout.h"   /* Completion, RolloutRequest, Rollout, Sampling, ... */
#include "files.h"                     /* files_path */
#include "models.h"                    /* assert_near, models_device, refused, lines_of, ... */
#include "run.h"                       /* metric, sh, weights_gap, run_host_library */
#include "shell.h"                     /* assert_holds, said, run */
#include "variants.h"                  /* VARIANTS, variant_of */

enum { LAYERS = 2, WIDTH = 32, VOCAB = 40, CONTEXT = 24, ROWS = 48, TARGETS = 18 };

static const Backend *cuda[2]; /* by Dtype */
static Device *device[2];
static void (*host_seed)(uint64_t);

static int setup(void **state) {
    Error e;
    if (!getenv("LLMC_CUDA_LIBRARY")) setenv("LLMC_CUDA_LIBRARY", "build/llmc_cuda_host.so", 1);
    if (models_setup(state)) return 1;
    for (int type = 0; type < 2; type++)
        if (!backend_open(DEVICE_CUDA, (Dtype)type, &cuda[type], &device[type], &e)) {
            print_error("%s\n", e.text);
            return 1;
        }
    void *library = dlopen(getenv("LLMC_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD);
    if (library) *(void **)&host_seed = dlsym(library, "cuda_host_seed");
    if (host_seed) {
        char *ordinary = run_host_library(); /* without the sanitizers that this process may use */
        setenv("LLMC_CUDA_LIBRARY", ordinary, 1);
        free(ordinary);
    }
    FILE *chat = fopen(files_path("chat.jsonl"), "w"), *tasks = fopen(files_path("tasks.jsonl"), "w");
    for (int p = 0; p < 8; p++) {
        for (int k = 0; k < 3; k++) fprintf(chat, "{\"prompt\":\"%c=\",\"completion\":\"%d\"}\n", 'a' + p, k);
        fprintf(tasks, "{\"prompt\":\"%c=\",\"answer\":\"%d\",\"task\":\"exact\"}\n", 'a' + p, p);
    }
    if (fclose(chat) | fclose(tasks)) return 1;
    sh("data/make_shard --quiet -i $T/chat.jsonl -o $T/chat.shard && data/make_shard --quiet -i $T/tasks.jsonl "
       "-o $T/tasks.shard");
    sh("./train_sft --layers 2 --heads 2 --width 32 --context 16 -i $T/chat.shard -l 1e-2 --batch-tokens 16 "
       "--micro-tokens 96 -x 8 -o $T/base.bin");
    return 0;
}

static int teardown(void **state) {
    if (host_seed) host_seed(0);
    for (int type = 0; type < 2; type++) cuda[type]->close(device[type]);
    return models_teardown(state);
}

/* ==== One model on two devices ==== */

/* The model of the test: GPT-2, or one of the variants of variants.h, whose heads have 12 or 16 channels. The larger
 * ones are accessed 16 bytes at a time, and in bf16 multiplied on tensor cores. */
static int variant = -1, wide;
static int32_t adapters, dora; /* the projections with low-rank adapters; whether they are DoRA's */

static ModelConfig config_of(void) {
    ModelConfig c = gpt2_config(LAYERS, variant < 0 ? 2 : 4, wide ? 48 : WIDTH, VOCAB, CONTEXT);
    c.value_head = 1;
    if (variant >= 0) variant_of(&c, variant);
    if (!adapters) return c;
    c.family = variant < 0 ? FAMILY_GPT2 : FAMILY_LLAMA;
    c.lora = (LoraConfig){.rank = wide ? 8 : 3, .targets = adapters, .scale = 0.7f, .dora = dora};
    return c;
}

static Model model_on(const Backend *b, Device *d, const float *w) {
    Error e;
    Model m;
    const ModelConfig c = config_of();
    if (!model_new(&m, &c, b, d, true, &e)) fail_msg("%s", e.text);
    model_init(&m, 3);
    if (w) b->weights_upload(d, m.weights, w, m.parameters);
    return m;
}

/* Initial weights, scaled up so that attention is not uniform, with biases, rounded to bf16 so that all devices hold
 * the same values. */
static float *model_weights(size_t *n) {
    Model m = model_on(backend_cpu(), models_device, NULL);
    float *w = (float *)xmalloc((*n = m.parameters) * sizeof *w);
    m.backend->weights_download(m.device, w, m.weights, *n);
    Random r = random_start(4, 0);
    for (size_t i = 0; i < *n; i++) {
        w[i] = (variant < 0 ? 4 : 2) * w[i] + 0.05f * (float)random_normal(&r);
        uint32_t bits;
        memcpy(&bits, &w[i], sizeof bits);
        bits = (bits + 0x8000u) & 0xffff0000u;
        memcpy(&w[i], &bits, sizeof bits);
    }
    const ModelConfig *c = &m.config; /* padding rows are 0 in every model */
    const size_t used = (size_t)c->vocab * (size_t)c->width, all = (size_t)c->padded_vocab * (size_t)c->width;
    for (size_t i = used; i < all; i++) {
        w[m.tensor[TENSOR_wte].offset + i] = 0;
        if (!c->tied) w[m.tensor[TENSOR_headw].offset + i] = 0;
    }
    model_free(&m);
    return w;
}

/* Two sequences, and a prompt with two answers. */
static Batch model_batch(void) {
    int32_t ids[ROWS];
    Random r = random_start(5, 0);
    for (int i = 0; i < ROWS; i++) ids[i] = (int32_t)random_below(&r, VOCAB);
    Batch b = batch_new(ROWS, TARGETS, 6);
    batch_sequence(&b, ids, NULL, 7);
    const int prompt = batch_segment(&b, ids + 7, 5, 0, -1);
    batch_completion(&b, prompt, ids + 12, NULL, 4);
    batch_completion(&b, prompt, ids + 16, NULL, 1);
    batch_completion(&b, prompt, ids + 17, NULL, 6);
    batch_sequence(&b, ids + 30, NULL, 2);
    assert_int_equal(b.targets, TARGETS);
    return b;
}

typedef struct Answer {
    float logp[TARGETS], entropy[TARGETS], value[TARGETS];
    int32_t argmax[TARGETS];
    float *grads; /* of the trained tensors, which begin at offset[] */
    size_t count, offset[TENSOR_COUNT];
} Answer;

/* Forward and backward; the backward pass runs twice, because gradients accumulate. */
static Answer answer_of(const Backend *b, Device *d, const float *weights, int recompute, float temperature) {
    Error e;
    Model m = model_on(b, d, weights);
    Batch batch = model_batch();
    Workspace w;
    Answer a;
    float dlogp[TARGETS], dentropy[TARGETS], dvalue[TARGETS];
    Random r = random_start(6, 0);
    for (int i = 0; i < TARGETS; i++) {
        dlogp[i] = (float)random_normal(&r);
        dentropy[i] = 0.3f * (float)random_normal(&r);
        dvalue[i] = (float)random_normal(&r);
    }
    if (!workspace_new(&w, &m, ROWS, TARGETS, 6, true, recompute, &e)) fail_msg("%s", e.text);
    const ModelOutput out = {.logp = a.logp, .entropy = a.entropy, .argmax = a.argmax, .value = a.value};
    for (int pass = 0; pass < 2; pass++) {
        model_forward(&m, &w, &batch, temperature, &out);
        model_backward(&m, &w, &batch, temperature, dlogp, dentropy, dvalue);
    }
    a.count = m.grads_count;
    memcpy(a.offset, m.grads_offset, sizeof a.offset);
    a.grads = (float *)xmalloc(a.count * sizeof *a.grads);
    b->download(d, a.grads, m.grads, a.count * sizeof *a.grads);
    if (!model_sync(&m, &e)) fail_msg("%s", e.text);
    workspace_free(&w, &m), batch_free(&batch), model_free(&m);
    return a;
}

static void close_to(const char *what, const float *got, const float *want, int n, double tolerance) {
    for (int i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= tolerance * (1 + fabs(want[i]))))
            fail_msg("%s[%d] is %.7g, the CPU has %.7g", what, i, got[i], want[i]);
}

/* Checks the gradients of each tensor as a whole: |difference| <= tolerance |gradient on the CPU|. */
static void gradients_close(const Answer *got, const Answer *want, double tolerance) {
    const ModelConfig c = config_of();
    TensorInfo t[TENSOR_COUNT];
    model_tensors(&c, t);
    for (int i = 0; i < TENSOR_COUNT; i++) {
        double gap = 0, norm = 0;
        if (!tensor_trained(&t[i])) continue;
        for (size_t k = got->offset[i]; k < got->offset[i] + t[i].size; k++) {
            gap += pow((double)got->grads[k] - want->grads[k], 2);
            norm += pow(want->grads[k], 2);
        }
        if (!(sqrt(gap) <= tolerance * sqrt(norm)))
            fail_msg("gradient of %s is off by %.3g of its norm", t[i].name, sqrt(gap / norm));
    }
}

static void check_model(void) {
    size_t n;
    float *weights = model_weights(&n);
    for (int recompute = 0; recompute < 3; recompute++) {
        const float temperature = recompute == 1 ? 0.7f : 1.0f;
        const Answer want = answer_of(backend_cpu(), models_device, weights, recompute, temperature);
        for (int type = 0; type < 2; type++) {
            /* float32: other orders of sums through the layers, some hundred roundings of 2^-24. bf16: every weight and
             * activation is rounded by up to 2^-9 = 2e-3, some twenty roundings deep */
            const double tolerance = type == DTYPE_BF16 ? 0.04 : 2e-5;
            Answer first = {.grads = NULL};
            for (uint64_t seed = 0; seed < (host_seed ? 2 : 1); seed++) {
                if (host_seed) host_seed(seed);
                const Answer got = answer_of(cuda[type], device[type], weights, recompute, temperature);
                close_to("logp", got.logp, want.logp, TARGETS, tolerance);
                close_to("entropy", got.entropy, want.entropy, TARGETS, tolerance);
                close_to("value", got.value, want.value, TARGETS, 3 * tolerance); /* a sum over large terms */
                if (type == DTYPE_FLOAT32) assert_memory_equal(got.argmax, want.argmax, sizeof got.argmax);
                gradients_close(&got, &want, type == DTYPE_BF16 ? 0.05 : 5e-5);
                if (!seed) first = got;
                else { /* the same bits in another order of threads and blocks */
                    assert_memory_equal(got.logp, first.logp, sizeof got.logp);
                    assert_memory_equal(got.grads, first.grads, got.count * sizeof(float));
                    free(got.grads);
                }
            }
            free(first.grads);
        }
        free(want.grads);
    }
    free(weights);
}

static void test_model(void **state) {
    (void)state;
    check_model();
}

static void test_variants(void **state) {
    (void)state;
    for (variant = 0; variant < VARIANTS; variant++)
        for (wide = 0; wide < 2; wide++) check_model();
    variant = -1;
    wide = 0;
}

/* GPT-2 and the variants with adapters, of all projections and of some. */
static const int32_t targets_of[VARIANTS + 1] = {LORA_ALL, LORA_ALL, LORA_Q | LORA_V, LORA_ALL,
                                                 LORA_K | LORA_O | LORA_UP};

static void test_adapters(void **state) {
    (void)state;
    for (variant = -1; variant < VARIANTS; variant++) {
        adapters = targets_of[variant + 1];
        wide = variant >= 0 && variant % 2 == 0;
        for (dora = 0; dora < 2; dora++) check_model();
        dora = 0;
    }
    variant = -1;
    adapters = wide = 0;
}

/* ==== Steps of the optimizer, states ==== */

/* One step of maximum likelihood on the batch. */
static double learn(Model *m, Optimizer *o, double lr) {
    Error e;
    Batch batch = model_batch();
    Workspace w;
    float dlogp[TARGETS], logp[TARGETS];
    double loss = 0;
    for (int i = 0; i < TARGETS; i++) dlogp[i] = -1.0f / TARGETS;
    if (!workspace_new(&w, m, ROWS, TARGETS, 6, true, 0, &e)) fail_msg("%s", e.text);
    model_forward_backward(m, &w, &batch, 1, dlogp, &(ModelOutput){.logp = logp});
    const OptimizerResult result = optimizer_step(o, m, lr);
    assert_false(result.skipped);
    for (int i = 0; i < batch.targets; i++) loss -= logp[i] / batch.targets;
    if (!model_sync(m, &e)) fail_msg("%s", e.text);
    workspace_free(&w, m), batch_free(&batch);
    return loss;
}

static void check_steps(void) {
    Error e;
    size_t n;
    float *weights = model_weights(&n);
    for (int type = 0; type < 2; type++) {
        Model m[2] = {model_on(backend_cpu(), models_device, weights), model_on(cuda[type], device[type], weights)};
        Optimizer o[2];
        double loss[2] = {0}, begin = 0;
        for (int k = 0; k < 2; k++) assert_true(optimizer_new(&o[k], &m[k], &e));
        for (int step = 0; step < 8; step++) {
            for (int k = 0; k < 2; k++) loss[k] = learn(&m[k], &o[k], 2e-3);
            assert_near(loss[1], loss[0], type == DTYPE_BF16 ? 0.1 : 1e-3);
            if (step == 0) begin = loss[0];
        }
        assert_true(loss[1] < begin - 0.3);
        if (adapters) { /* the weights of the base do not change */
            const size_t base = m[1].tensor[BASE_TENSORS].offset;
            float *now = (float *)xmalloc(n * sizeof *now);
            m[1].backend->weights_download(m[1].device, now, m[1].weights, n);
            assert_memory_equal(now, weights, base * sizeof *now);
            assert_true(memcmp(now + base, weights + base, (n - base) * sizeof *now));
            free(now);
        }
        for (int k = 0; k < 2; k++) optimizer_free(&o[k], &m[k]), model_free(&m[k]);
    }
    free(weights);
}

static void test_steps(void **state) {
    (void)state;
    check_steps();
}

static void test_steps_of_adapters(void **state) {
    (void)state;
    adapters = LORA_ALL;
    check_steps();
    adapters = 0;
}

/* With a tiny learning rate most steps change the master weights and none of the bf16 weights, so the masters must
 * accumulate. A training state restores them bit for bit; a device that keeps no masters loads them as its weights. */
static void test_masters_and_states(void **state) {
    (void)state;
    Error e;
    size_t n;
    float *weights = model_weights(&n);
    Model m = model_on(cuda[DTYPE_BF16], device[DTYPE_BF16], weights), again, wide;
    Optimizer o, o2, o3;
    ModelFile f = {.lineage = json_array()}, f2, f3;
    assert_true(optimizer_new(&o, &m, &e));
    assert_non_null(o.master);
    for (int i = 0; i < 3; i++) learn(&m, &o, 1e-5);
    float *master = (float *)xmalloc(n * sizeof *master), *now = (float *)xmalloc(n * sizeof *now);
    float *other = (float *)xmalloc(n * sizeof *other);
    m.backend->download(m.device, master, o.master, n * sizeof *master);
    m.backend->weights_download(m.device, now, m.weights, n);
    size_t moved = 0;
    for (size_t i = 0; i < n; i++) {
        assert_true(fabs((double)master[i] - weights[i]) < 4e-5); /* three steps, each at most the learning rate */
        assert_true(fabs((double)now[i] - master[i]) <= fabs(master[i]) * 0x1p-7);
        moved += master[i] != weights[i];
    }
    assert_true(moved > n / 2);
    if (!model_save(&m, &f, files_path("m.state"), false, &o, "{}", &e)) fail_msg("%s", e.text);
    if (!model_load(&again, &f2, files_path("m.state"), NULL, true, m.backend, m.device, true, 0, &o2, &e) ||
        !model_load(&wide, &f3, files_path("m.state"), NULL, true, backend_cpu(), models_device, true, 0, &o3, &e))
        fail_msg("%s", e.text);
    again.backend->download(again.device, other, o2.master, n * sizeof *other);
    assert_memory_equal(other, master, n * sizeof *other);
    again.backend->weights_download(again.device, other, again.weights, n);
    assert_memory_equal(other, now, n * sizeof *other);
    wide.backend->weights_download(wide.device, other, wide.weights, n);
    assert_memory_equal(other, master, n * sizeof *other);
    o2.step = o.step;
    for (int i = 0; i < 2; i++) assert_true(learn(&m, &o, 1e-4) == learn(&again, &o2, 1e-4));
    m.backend->weights_download(m.device, now, m.weights, n);
    again.backend->weights_download(again.device, other, again.weights, n);
    assert_memory_equal(other, now, n * sizeof *other);
    /* a float32 checkpoint gives the masters their full precision */
    Model from;
    Optimizer o4;
    ModelFile f4;
    if (!model_save(&wide, &f, files_path("m.bin"), false, NULL, NULL, &e) ||
        !model_load(&from, &f4, files_path("m.bin"), NULL, true, m.backend, m.device, true, 0, &o4, &e))
        fail_msg("%s", e.text);
    from.backend->download(from.device, other, o4.master, n * sizeof *other);
    assert_memory_equal(other, master, n * sizeof *other);
    optimizer_free(&o, &m), optimizer_free(&o2, &again), optimizer_free(&o3, &wide), optimizer_free(&o4, &from);
    model_free(&m), model_free(&again), model_free(&wide), model_free(&from);
    model_file_free(&f), model_file_free(&f2), model_file_free(&f3), model_file_free(&f4);
    free(master), free(now), free(other), free(weights);
}

/* ==== Sampling ==== */

enum { PROMPTS = 3, SAMPLES = 3, NEW = 6 };
typedef struct Drawn {
    int32_t tokens[PROMPTS * SAMPLES][NEW], count[PROMPTS * SAMPLES];
    float logp[PROMPTS * SAMPLES][NEW];
} Drawn;

static Drawn draw_on(const Backend *b, Device *d, const float *weights, int slots, float penalty) {
    Error e;
    Model m = model_on(b, d, weights);
    Rollout r;
    RolloutRequest q[PROMPTS];
    Completion c[PROMPTS * SAMPLES];
    static const int32_t prompt[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3};
    static Drawn drawn; /* zero-filled: it is compared as a whole */
    memset(&drawn, 0, sizeof drawn);
    for (int i = 0; i < PROMPTS; i++)
        q[i] = (RolloutRequest){.prompt = prompt + i,
                                .prompt_len = 2 + i,
                                .samples = i == 1 ? 1 : SAMPLES,
                                .id = (uint64_t)i * SAMPLES,
                                .out = c + i * SAMPLES};
    Sampling s = sampling_default();
    s.max_new = NEW;
    s.stop[s.stops++] = 7;
    s.top_k = 30;
    s.top_p = 0.98f;
    s.seed = 11;
    s.repetition_penalty = penalty;
    if (!rollout_new(&r, &m, slots, 8, NEW, &e)) fail_msg("%s", e.text);
    for (int round = 0; round < 2; round++) { /* the second run meets step shapes that are already captured */
        if (!rollout_run(&r, &s, q, PROMPTS, NULL, NULL, &e)) fail_msg("%s", e.text);
        for (int i = 0; i < PROMPTS; i++)
            for (int k = 0; k < q[i].samples; k++) {
                const Completion *from = &q[i].out[k];
                const int at = i * SAMPLES + k;
                if (round) assert_int_equal(drawn.count[at], from->count);
                if (round) assert_memory_equal(drawn.tokens[at], from->tokens, (size_t)from->count * sizeof(int32_t));
                drawn.count[at] = from->count;
                memcpy(drawn.tokens[at], from->tokens, (size_t)from->count * sizeof(int32_t));
                memcpy(drawn.logp[at], from->logp, (size_t)from->count * sizeof(float));
                completion_free(&q[i].out[k]);
            }
    }
    rollout_free(&r), model_free(&m);
    return drawn;
}

static void test_sampling(void **state) {
    (void)state;
    size_t n;
    float *weights = model_weights(&n);
    for (int penalised = 0; penalised < 2; penalised++) {
        const float penalty = penalised ? 1.3f : 1.0f;
        const Drawn want = draw_on(backend_cpu(), models_device, weights, 5, penalty);
        for (uint64_t seed = 0; seed < (host_seed && !penalised ? 2 : 1); seed++) {
            if (host_seed) host_seed(seed);
            const Drawn got = draw_on(cuda[0], device[0], weights, seed ? 3 : 5, penalty);
            assert_memory_equal(got.count, want.count, sizeof got.count);
            assert_memory_equal(got.tokens, want.tokens, sizeof got.tokens); /* the same stream of random numbers */
            close_to("logp", &got.logp[0][0], &want.logp[0][0], PROMPTS * SAMPLES * NEW, 2e-5);
        }
    }
    /* bf16: the sampler reports what the trainer's forward pass computes, up to bf16 rounding */
    const Drawn got = draw_on(cuda[1], device[1], weights, 5, 1);
    Error e;
    Model m = model_on(cuda[1], device[1], weights);
    Workspace w;
    Batch b = batch_new(32, NEW, 2);
    static const int32_t prompt[] = {3, 1};
    float logp[NEW];
    const int p = batch_segment(&b, prompt, 2, 0, -1);
    batch_completion(&b, p, got.tokens[1], NULL, got.count[1]);
    if (!workspace_new(&w, &m, 32, NEW, 2, false, 0, &e)) fail_msg("%s", e.text);
    model_forward(&m, &w, &b, 1, &(ModelOutput){.logp = logp});
    close_to("logp", got.logp[1], logp, got.count[1], 0.04);
    workspace_free(&w, &m), batch_free(&b), model_free(&m);
    free(weights);
}

/* Samples from the cache, of models with windows, caps and rotary positions, with and without adapters. */
static void test_sampling_of_variants(void **state) {
    (void)state;
    size_t n;
    for (int i = 0; i < 2 * VARIANTS + 1; i++) {
        variant = i < VARIANTS ? i : i - VARIANTS - 1;
        adapters = i < VARIANTS ? 0 : targets_of[variant + 1];
        float *weights = model_weights(&n);
        const Drawn want = draw_on(backend_cpu(), models_device, weights, 5, 1);
        const Drawn got = draw_on(cuda[0], device[0], weights, 5, 1);
        assert_memory_equal(got.count, want.count, sizeof got.count);
        assert_memory_equal(got.tokens, want.tokens, sizeof got.tokens);
        close_to("logp", &got.logp[0][0], &want.logp[0][0], PROMPTS * SAMPLES * NEW, 2e-5);
        free(weights);
    }
    variant = -1;
    adapters = 0;
}

/* ==== Programs ==== */

#define SFT  "./train_sft -c $T/base.bin -i $T/chat.shard -l 3e-3 --batch-tokens 16 --micro-tokens 96 "
#define LORA "--lora-rank 3 --lora-alpha 6 "
#define GRPO                                                                                                           \
    "./train_grpo -c $T/base.bin -i $T/tasks.shard -g 3 -p 2 -G 4 --micro-tokens 96 -l 1e-3 --sample-count 1 "         \
    "--beta 0.05 --temperature 1.2 "

static void test_train_sft(void **state) {
    (void)state;
    sh(SFT "-x 5 -o $T/cpu.bin --metrics $T/cpu.jsonl");
    sh(SFT "-x 5 -o $T/gpu.bin --metrics $T/gpu.jsonl --device cuda --dtype float32");
    sh(SFT "-x 5 -o $T/half.bin --metrics $T/half.jsonl --device cuda --recompute 2");
    assert_holds(said, "device  cuda");
    assert_holds(said, "bf16");
    assert_holds(said, "peak GPU memory");
    for (int i = 0; i < 5; i++) {
        assert_near(metric("gpu.jsonl", i, "loss"), metric("cpu.jsonl", i, "loss"), 1e-4);
        assert_near(metric("half.jsonl", i, "loss"), metric("cpu.jsonl", i, "loss"), 0.05);
        assert_near(metric("gpu.jsonl", i, "grad_norm"), metric("cpu.jsonl", i, "grad_norm"), 1e-3);
        assert_true(metric("gpu.jsonl", i, "perf/share_of_peak") > 0);
    }
    assert_true(weights_gap("cpu.bin", "gpu.bin") < 2e-3);
    /* interrupted when the state is written, and resumed: the same bytes */
    sh(SFT "-x 4 --lr-scheduler-type constant -o $T/whole.bin --device cuda");
    sh(SFT "-x 2 --lr-scheduler-type constant -o $T/part.bin --device cuda --save-steps 2 --state $T/at2.state");
    sh(SFT "-x 4 --lr-scheduler-type constant -o $T/part.bin --device cuda --resume $T/at2.state");
    assert_true(weights_gap("whole.bin", "part.bin") == 0);
}

/* The same with adapters: they are trained, alone, as on the CPU, and a run continues from a state. */
static void test_train_adapters(void **state) {
    (void)state;
    sh(SFT LORA "-x 5 -o $T/cpu.bin --metrics $T/cpu.jsonl");
    sh(SFT LORA "-x 5 -o $T/gpu.bin --metrics $T/gpu.jsonl --device cuda --dtype float32");
    sh(SFT LORA "-x 5 -o $T/half.bin --metrics $T/half.jsonl --device cuda --recompute 2");
    for (int i = 0; i < 5; i++) {
        assert_near(metric("gpu.jsonl", i, "loss"), metric("cpu.jsonl", i, "loss"), 1e-4);
        assert_near(metric("half.jsonl", i, "loss"), metric("cpu.jsonl", i, "loss"), 0.05);
        assert_near(metric("gpu.jsonl", i, "grad_norm"), metric("cpu.jsonl", i, "grad_norm"), 1e-3);
    }
    assert_true(metric("gpu.jsonl", 4, "loss") < metric("gpu.jsonl", 0, "loss"));
    assert_true(weights_gap("cpu.bin", "gpu.bin") < 2e-3);
    assert_true(weights_gap("gpu.bin", "base.bin") > 0);
    sh(SFT LORA "-x 4 --lr-scheduler-type constant -o $T/whole.bin --device cuda");
    sh(SFT LORA "-x 2 --lr-scheduler-type constant -o $T/part.bin --device cuda --save-steps 2 --state $T/at2.state");
    sh(SFT LORA "-x 4 --lr-scheduler-type constant -o $T/part.bin --device cuda --resume $T/at2.state");
    assert_true(weights_gap("whole.bin", "part.bin") == 0);
}

/* The first step of GRPO samples, scores and trains: both devices must draw the same samples and compute the same
 * loss. */
static void test_train_grpo(void **state) {
    (void)state;
    sh(GRPO "-x 3 -o $T/cpu.bin --metrics $T/cpu.jsonl");
    sh(GRPO "-x 3 -o $T/gpu.bin --metrics $T/gpu.jsonl --device cuda --dtype float32");
    static const char *const same[] = {"reward", "num_tokens", "completions/mean_length"};
    for (int i = 0; i < 3; i++)
        for (size_t k = 0; k < sizeof same / sizeof *same; k++)
            assert_near(metric("gpu.jsonl", i, same[k]), metric("cpu.jsonl", i, same[k]), 1e-6);
    for (int i = 0; i < 3; i++) assert_near(metric("gpu.jsonl", i, "loss"), metric("cpu.jsonl", i, "loss"), 1e-4);
    sh(GRPO LORA "-x 3 -o $T/cpu.bin --metrics $T/cpu.jsonl");
    sh(GRPO LORA "-x 3 -o $T/gpu.bin --metrics $T/gpu.jsonl --device cuda --dtype float32");
    for (int i = 0; i < 3; i++) { /* the reference is the model without its adapters */
        assert_near(metric("gpu.jsonl", i, "reward"), metric("cpu.jsonl", i, "reward"), 1e-6);
        assert_near(metric("gpu.jsonl", i, "loss"), metric("cpu.jsonl", i, "loss"), 1e-4);
        assert_near(metric("gpu.jsonl", i, "kl"), metric("cpu.jsonl", i, "kl"), 1e-4);
    }
    sh(GRPO "-x 3 -o $T/half.bin --metrics $T/half.jsonl --device cuda");
    assert_true(isfinite(metric("half.jsonl", 2, "loss")));
}

static void test_generate_and_evaluate(void **state) {
    (void)state;
    sh("./generate -c $T/base.bin --temperature 0 -g 4 a=");
    char *text = xstrdup(out);
    sh("./generate -c $T/base.bin --temperature 0 -g 4 --device cuda --dtype float32 a=");
    assert_string_equal(out, text);
    sh("./generate -c $T/base.bin --num-samples 3 --seed 5 -g 4 --device cuda b=");
    assert_int_equal(lines_of(out), 3);
    sh("./evaluate -c $T/base.bin -i $T/chat.shard >$T/a.json && ./evaluate -c $T/base.bin -i $T/chat.shard --device cuda "
       ">$T/b.json");
    assert_near(metric("b.json", 0, "loss"), metric("a.json", 0, "loss"), 0.02);
    free(text);
}

/* A machine without the library, with another version of it, or with a different library of that name. */
static void test_refusals(void **state) {
    (void)state;
    refused(1, "LLMC_CUDA_LIBRARY=/nowhere/llmc_cuda.so ./generate -c $T/base.bin --device cuda a=",
            "--device cuda: /nowhere/llmc_cuda.so: ");
    refused(1, "LLMC_CUDA_LIBRARY=libm.so.6 ./generate -c $T/base.bin --device cuda a=",
            "libm.so.6 was built from a different version than this program; run make");
    refused(2, "./generate -c $T/base.bin --device tpu a=", "--device");
    run(0, "LLMC_CUDA_LIBRARY=/nowhere ./generate -c $T/base.bin -g 2 a="); /* without --device cuda it is not needed */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_model),
                                       cmocka_unit_test(test_variants),
                                       cmocka_unit_test(test_adapters),
                                       cmocka_unit_test(test_steps),
                                       cmocka_unit_test(test_steps_of_adapters),
                                       cmocka_unit_test(test_masters_and_states),
                                       cmocka_unit_test(test_sampling),
                                       cmocka_unit_test(test_sampling_of_variants),
                                       cmocka_unit_test(test_train_sft),
                                       cmocka_unit_test(test_train_adapters),
                                       cmocka_unit_test(test_train_grpo),
                                       cmocka_unit_test(test_generate_and_evaluate),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests_name("cuda backend", tests, setup, teardown);
}
