/* test_families.c - every family against transformers in float64: the tiny models of tests/golden/families
 * (dev/golden/golden_families.py).
 *
 * A float32 pass of two layers is a chain of some hundred sums with a relative error of a few 2^-24 each: 1e-5 for
 * log-probabilities and entropies of order 1 to 10, 2e-5 for logits of order 10. The backward pass doubles the chain,
 * and sums over rows cancel: 1e-4 of the Euclidean norm of a tensor's gradient, for the norm of the difference. */
#include "../llmc/base/error.h"              /* Error, xmalloc */
#include "../llmc/cpu/cpu.h"                 /* backend_cpu, backend_cpu_for */
#include "../llmc/model/backend.h"           /* Backend, Device, DTYPE_BF16 */
#include "../llmc/model/batch.h"             /* Batch */
#include "../llmc/model/config.h"            /* ModelConfig, FAMILY_GPT2, POSITION_ROTARY */
#include "../llmc/model/huggingface_names.h" /* HuggingfacePart, HuggingfaceParts, huggingface_parts_free, ... */
#include "../llmc/model/model.h"             /* model_set_longest, Model, model_download, model_free, ... */
#include "../llmc/model/model_file.h"        /* model_load_as */
#include "../llmc/model/model_load.h"        /* ModelFile, ModelLoad, model_file_free */
#include "../llmc/model/optimizer.h"         /* Optimizer, optimizer_free, optimizer_new, optimizer_bytes, ... */
#include "../llmc/model/pack.h"              /* batch_free, batch_new, batch_segment, batch_completion, ... */
#include "../llmc/model/safetensors.h"       /* SafeTensor, Safetensors, safetensors_close, safetensors_find, ... */
#include "../llmc/model/transformer.h"       /* ModelOutput, model_forward, model_forward_backward, ... */
#include "../llmc/model/workspace.h"         /* Workspace, workspace_free, workspace_new, KVCache, ... */
#include "../llmc/rollout/rollout.h"         /* Completion, Rollout, Sampling, completion_free, ... */
#include "../llmc/rollout/sequence.h"        /* Sequence, sequence_draw, sequence_free, sequence_new, ... */
#include "cpu_device.h"                      /* B, D, close_device, open_device_one_thread */

static const char *const names[] = {"gpt2",       "llama-a",       "llama-b",   "mistral", "qwen2",
                                    "qwen2-yarn", "qwen3",         "qwen3-odd", "smollm3", "olmo2",
                                    "phi3",       "phi3-longrope", "gemma2",    "gemma3"};
enum { NAMES = sizeof names / sizeof *names, ROWS_MAX = 90, PROMPT = 5, GREEDY = 16, SAMPLES = 3, STEPS = 10 };

/* The model, and the results of transformers. */
typedef struct Case {
    const char *name;
    Model m;
    ModelFile file;
    Safetensors want;
    int32_t token[ROWS_MAX];
    int length[2], rows;
} Case;

/* An array of the results, in new memory. */
static float *result(const Case *k, const char *kind, const char *name, size_t *n) {
    char full[256];
    snprintf(full, sizeof full, "%s%s", kind, name);
    const SafeTensor *t = safetensors_find(&k->want, full);
    if (!t) fail_msg("%s: no %s", k->name, full);
    float *values = xmalloc((size_t)t->elements * sizeof *values);
    safetensors_floats(t, 0, values, (size_t)t->elements);
    *n = (size_t)t->elements;
    return values;
}

static Case case_open(const char *name, const char *expected) {
    Error e;
    Case k = {.name = name};
    char path[256];
    size_t n;
    snprintf(path, sizeof path, "tests/golden/families/%s", name);
    const ModelLoad how = {.gradients = true};
    if (!model_load_as(&k.m, &k.file, path, &how, B, D, NULL, &e)) fail_msg("%s", e.text);
    snprintf(path, sizeof path, "tests/golden/families/%s/%s", name, expected);
    if (!safetensors_open(&k.want, path, &e)) fail_msg("%s", e.text);
    float *token = result(&k, "token", "", &n), *length = result(&k, "length", "", &(size_t){0});
    k.rows = (int)n;
    assert_true(n <= ROWS_MAX);
    for (size_t i = 0; i < n; i++) k.token[i] = (int32_t)token[i];
    for (int i = 0; i < 2; i++) k.length[i] = (int)length[i];
    assert_int_equal(k.length[0] + k.length[1], k.rows);
    free(token), free(length);
    return k;
}

static void case_close(Case *k) { model_free(&k->m), model_file_free(&k->file), safetensors_close(&k->want); }

/* Layouts of batches: one sequence alone; both as two segments; both, the first one divided into a prompt that is
 * longer than the windows of these models, and two completions of it, of which one is all that follows and the other a
 * part of it. */
typedef enum { FIRST_ALONE, SECOND_ALONE, PACKED, SHARED, LAYOUTS } Layout;
static const char *const layout_name[] = {"first alone", "second alone", "packed", "shared prompt"};

/* A batch. Target t predicts the token after token[t], and is share[t] of the loss's term of that token. */
typedef struct Problem {
    Batch batch;
    int token[ROWS_MAX];
    float share[ROWS_MAX];
} Problem;

static bool last_token(const Case *k, int i) { return i == k->length[0] - 1 || i == k->rows - 1; }

/* Adds a target for each of `count` rows from `row`, those of the tokens from `token`. After the last token of a
 * sequence there is none: its row has the target 0, which is not part of the loss. */
static void add_targets(Problem *p, const Case *k, int row, int token, int count) {
    for (int i = token; i < token + count; i++) {
        p->token[p->batch.targets] = i;
        p->share[p->batch.targets] = last_token(k, i) ? 0 : 1;
        batch_target(&p->batch, row + i - token, last_token(k, i) ? 0 : k->token[i + 1]);
    }
}

static void add_sequence(Problem *p, const Case *k, int sequence) {
    const int first = sequence ? k->length[0] : 0, row = p->batch.rows;
    batch_segment(&p->batch, k->token + first, k->length[sequence], 0, -1);
    add_targets(p, k, row, first, k->length[sequence]);
}

static void add_shared(Problem *p, const Case *k) {
    const int shared = 13, rest = k->length[0] - shared, part = rest / 2;
    const int prompt = batch_segment(&p->batch, k->token, shared, 0, -1);
    add_targets(p, k, 0, 0, shared - 1);
    for (int copy = 0; copy < 2; copy++) {
        const int before = p->batch.targets;
        batch_completion(&p->batch, prompt, k->token + shared, NULL, copy ? part : rest);
        for (int t = before; t < p->batch.targets; t++) {
            p->token[t] = shared - 1 + t - before;
            p->share[t] = t - before < part ? 0.5f : 1;
        }
    }
}

static Problem problem_of(const Case *k, Layout layout) {
    Problem p = {.batch = batch_new(ROWS_MAX, ROWS_MAX, 4)};
    if (layout == FIRST_ALONE || layout == PACKED) add_sequence(&p, k, 0);
    if (layout == SHARED) add_shared(&p, k);
    if (layout != FIRST_ALONE) add_sequence(&p, k, 1);
    return p;
}

static Workspace workspace_of(const Case *k, bool train, int recompute) {
    Error e;
    Workspace w;
    if (!workspace_new(&w, &k->m, ROWS_MAX, ROWS_MAX, 4, train, recompute, &e)) fail_msg("%s", e.text);
    return w;
}

/* Checks log-probabilities and entropies of all targets. */
static void assert_outputs(const Case *k, const Problem *p, const float *logp, const float *entropy, Layout layout) {
    size_t n;
    float *want = result(k, "logp", "", &n), *h = result(k, "entropy", "", &n);
    for (int t = 0; t < p->batch.targets; t++) {
        const int i = p->token[t];
        if (p->share[t] > 0 && !(fabs(logp[t] - want[i]) < 1e-5))
            fail_msg("%s, %s: after token %d: %.7g, transformers has %.7g", k->name, layout_name[layout], i, logp[t],
                     want[i]);
        if (entropy && !(fabs(entropy[t] - h[i]) < 1e-5))
            fail_msg("%s, %s: entropy %d: %.7g, transformers has %.7g", k->name, layout_name[layout], i, entropy[t],
                     h[i]);
    }
    free(want), free(h);
}

/* The rows of logits that the results have. */
static void check_logits(const Case *k, const Workspace *w, const Batch *packed) {
    Error e;
    size_t n, rows;
    float *want = result(k, "logits", "", &n), *row = result(k, "logits_row", "", &rows);
    const size_t V = (size_t)k->m.config.vocab;
    float *all = xmalloc(ROWS_MAX * V * sizeof *all);
    assert_true(model_logits(&k->m, w, packed, all, &e));
    for (size_t i = 0; i < rows; i++)
        for (size_t v = 0; v < V; v++)
            if (!(fabs(all[(size_t)row[i] * V + v] - want[i * V + v]) < 2e-5))
                fail_msg("%s: logit %zu of row %g: %g, not %g", k->name, v, row[i], all[(size_t)row[i] * V + v],
                         want[i * V + v]);
    free(want), free(row), free(all);
}

/* Log-probabilities, entropies and logits of every layout. */
static void check_forward(Case *k) {
    float logp[ROWS_MAX], entropy[ROWS_MAX];
    Workspace w = workspace_of(k, false, 0);
    for (Layout layout = 0; layout < LAYOUTS; layout++) {
        Problem p = problem_of(k, layout);
        model_forward(&k->m, &w, &p.batch, 1, &(ModelOutput){.logp = logp, .entropy = entropy});
        assert_outputs(k, &p, logp, entropy, layout);
        if (layout == PACKED) check_logits(k, &w, &p.batch);
        batch_free(&p.batch);
    }
    workspace_free(&w, &k->m);
}

/* Adds the gradients of the mean cross-entropy over all targets of both sequences, or of the part of it that belongs to
 * one of them. Returns that part. exact: also checks the log-probabilities. */
static double loss_and_gradient(const Case *k, Layout layout, int recompute, bool exact) {
    Workspace w = workspace_of(k, true, recompute);
    Problem p = problem_of(k, layout);
    float logp[ROWS_MAX], dlogp[ROWS_MAX];
    double loss = 0;
    for (int t = 0; t < p.batch.targets; t++) dlogp[t] = -p.share[t] / (float)(k->rows - 2);
    model_forward_backward(&k->m, &w, &p.batch, 1, dlogp, &(ModelOutput){.logp = logp});
    if (exact) assert_outputs(k, &p, logp, NULL, layout);
    for (int t = 0; t < p.batch.targets; t++) loss += (double)dlogp[t] * logp[t];
    batch_free(&p.batch), workspace_free(&w, &k->m);
    return loss;
}

static HuggingfaceParts parts_of(const Case *k) {
    return huggingface_parts(&k->m.config, k->m.config.family == FAMILY_GPT2 ? "transformer." : "model.");
}

/* The elements of a part of the file, from an array over all of the model's, in the order of the file. */
static float *part_of(const HuggingfacePart *p, const float *all) {
    float *values = xmalloc(p->rows * p->columns * sizeof *values);
    for (size_t i = 0; i < p->rows; i++)
        for (size_t j = 0; j < p->columns; j++)
            values[p->transposed ? j * p->rows + i : i * p->columns + j] = all[p->at + i * p->columns + j];
    return values;
}

/* The gradients in new memory. */
static float *gradients_of(const Case *k) {
    float *g = xmalloc(k->m.parameters * sizeof *g);
    model_settle_grads(&k->m);
    B->download(D, g, k->m.grads, k->m.parameters * sizeof *g);
    return g;
}

/* Compares all gradients with the results, under the names and in the shapes of the file. Returns the largest relative
 * difference of a tensor. */
static double gradient_gap(const Case *k, const float *g, double allowed, const char *how) {
    HuggingfaceParts parts = parts_of(k);
    double largest = 0;
    for (size_t i = 0; i < parts.count; i++) {
        size_t n;
        const HuggingfacePart *p = &parts.part[i];
        float *want = result(k, "grad.", p->name, &n), *got = part_of(p, g);
        double norm = 0, gap = 0;
        assert_int_equal(n, p->rows * p->columns);
        for (size_t j = 0; j < n; j++) {
            norm += (double)want[j] * want[j];
            gap += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
        }
        if (!(sqrt(gap) < allowed * sqrt(norm)))
            fail_msg("%s, %s: gradient of %s is off by %g of %g", k->name, how, p->name, sqrt(gap), sqrt(norm));
        largest = fmax(largest, sqrt(gap / norm));
        free(want), free(got);
    }
    huggingface_parts_free(&parts);
    return largest;
}

/* The loss and every gradient in every layout, at all levels of recomputation, which give the same bits. */
static void check_gradients(Case *k) {
    size_t n;
    float *loss = result(k, "loss", "", &n);
    for (Layout layout = SECOND_ALONE; layout < LAYOUTS; layout++) {
        float *first = NULL;
        for (int recompute = 0; recompute < 3; recompute++) {
            model_zero_grads(&k->m);
            double got = loss_and_gradient(k, layout, recompute, true);
            if (layout == SECOND_ALONE) got += loss_and_gradient(k, FIRST_ALONE, recompute, true);
            assert_true(fabs(got - loss[0]) < 1e-5);
            float *g = gradients_of(k);
            gradient_gap(k, g, 1e-4, layout == SECOND_ALONE ? "alone" : layout_name[layout]);
            if (recompute) {
                assert_memory_equal(first, g, k->m.parameters * sizeof *g);
                free(g);
            } else first = g;
        }
        free(first);
    }
    free(loss);
}

/* Whether element i of a tensor of the file is a bias of GPT-2's keys. The softmax is invariant to it, so its gradient
 * is rounding error only, which AdamW scales up. (Rotated keys are another matter: a bias turns with the position.) */
static bool free_bias(const Case *k, const char *name, size_t i) {
    const size_t width = (size_t)k->m.config.width;
    return strstr(name, "c_attn.bias") && i / width == 1;
}

/* Ten steps of AdamW: the loss before each and after the last, and the weights after the last, by the norm of the
 * difference relative to that of the whole movement.
 *
 * AdamW divides a gradient by its own size. An element whose gradient is x times its tensor's root mean square moves
 * wrongly by about d / x of its way, d: the relative error of the tensor's gradient, and by all of it if x < d. Gradients
 * are spread about evenly around 0, so a part of about x is below x, and the mean square of d / x above d is about d,
 * or 2 d with the elements below it. The gradients' errors are below 1e-5 here: sqrt(2e-5) < 5e-3, and 1e-2 leaves room
 * for biases, which have few elements. */
static void check_adamw(Case *k) {
    Error e;
    Optimizer o;
    size_t n;
    HuggingfaceParts parts = parts_of(k);
    float *loss = result(k, "loss", "", &n), *before = xmalloc(k->m.parameters * sizeof(float));
    float *after = xmalloc(k->m.parameters * sizeof(float));
    assert_int_equal(n, STEPS + 1);
    assert_true(optimizer_new(&o, &k->m, &e));
    optimizer_configure(&o, 0.9, 0.999, 1e-8, 0.1, 0);
    model_download(&k->m, 0, before, k->m.parameters);
    model_zero_grads(&k->m);
    for (int step = 0; step <= STEPS; step++) {
        const double got = loss_and_gradient(k, PACKED, 0, false);
        if (!(fabs(got - loss[step]) < 2e-5))
            fail_msg("%s: loss %g at step %d, not %g", k->name, got, step, loss[step]);
        if (step < STEPS) assert_false(optimizer_step(&o, &k->m, 1e-3).skipped);
    }
    model_download(&k->m, 0, after, k->m.parameters);
    for (size_t i = 0; i < parts.count; i++) {
        const HuggingfacePart *p = &parts.part[i];
        float *want = result(k, "adamw.", p->name, &n), *got = part_of(p, after), *old = part_of(p, before);
        double moved = 0, gap = 0;
        assert_int_equal(n, p->rows * p->columns);
        for (size_t j = 0; j < n; j++) {
            if (free_bias(k, p->name, j)) continue;
            moved += ((double)want[j] - old[j]) * ((double)want[j] - old[j]);
            gap += ((double)want[j] - got[j]) * ((double)want[j] - got[j]);
        }
        if (!(sqrt(gap) < 1e-2 * sqrt(moved)))
            fail_msg("%s: %s is off by %g after moving %g", k->name, p->name, sqrt(gap), sqrt(moved));
        free(want), free(got), free(old);
    }
    huggingface_parts_free(&parts);
    free(loss), free(before), free(after), optimizer_free(&o, &k->m);
}

/* Draws SAMPLES completions of GREEDY tokens to a prompt through the sampler, with its cache; two run at once. */
static void draw(const Case *k, const int32_t prompt[PROMPT], float temperature, Completion out[SAMPLES]) {
    Error e;
    Rollout r;
    RolloutRequest request = {.prompt = prompt, .prompt_len = PROMPT, .samples = SAMPLES, .out = out};
    Sampling s = sampling_default();
    s.temperature = temperature;
    s.max_new = GREEDY;
    assert_true(rollout_new(&r, &k->m, 2, PROMPT, GREEDY, &e));
    if (!rollout_run(&r, &s, &request, 1, NULL, NULL, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < SAMPLES; i++) assert_int_equal(out[i].count, GREEDY);
    rollout_free(&r);
}

/* The sampler's log-probabilities against those of a pass over the whole sequence without a cache; both are float32. */
static void check_completion(const Case *k, const int32_t prompt[PROMPT], const Completion *c) {
    int32_t all[PROMPT + GREEDY];
    float logp[ROWS_MAX];
    Workspace w = workspace_of(k, false, 0);
    Batch b = batch_new(ROWS_MAX, ROWS_MAX, 1);
    memcpy(all, prompt, PROMPT * sizeof *all);
    memcpy(all + PROMPT, c->tokens, GREEDY * sizeof *all);
    batch_sequence(&b, all, NULL, PROMPT + GREEDY);
    model_forward(&k->m, &w, &b, 1, &(ModelOutput){.logp = logp});
    for (int t = 0; t < GREEDY; t++)
        if (!(fabs(c->logp[t] - logp[PROMPT - 1 + t]) < 2e-5))
            fail_msg("%s: sampled token %d: %.7g, without a cache %.7g", k->name, t, c->logp[t], logp[PROMPT - 1 + t]);
    batch_free(&b), workspace_free(&w, &k->m);
}

/* Greedy decoding, token for token, and samples of the same prompt. */
static void check_sampler(Case *k) {
    size_t n;
    Completion out[SAMPLES];
    float *want = result(k, "greedy", "", &n);
    int32_t prompt[PROMPT];
    assert_int_equal(n, PROMPT + GREEDY);
    for (int i = 0; i < PROMPT; i++) prompt[i] = (int32_t)want[i];
    draw(k, prompt, 0, out);
    for (int i = 0; i < SAMPLES; i++) {
        for (int t = 0; t < GREEDY; t++)
            if (out[i].tokens[t] != (int32_t)want[PROMPT + t])
                fail_msg("%s: token %d is %d, transformers has %g", k->name, t, out[i].tokens[t], want[PROMPT + t]);
        completion_free(&out[i]);
    }
    draw(k, prompt, 1, out);
    for (int i = 0; i < SAMPLES; i++) {
        check_completion(k, prompt, &out[i]);
        completion_free(&out[i]);
    }
    free(want);
}

/* With products in bfloat16. A rounding to 8 bits is off by at most 2^-9 of the value, by 2^-9 / sqrt(3) or less in the
 * root mean square, and a product of two operands by sqrt(2) times that. A layer has four products, and their errors,
 * which are independent, add up in squares: that of a logit is sqrt(2/3) 2^-9 sqrt(4 L + 1) times the logits' root mean
 * square. A gradient has three times the products. A factor of 4 is for norms and activations that enlarge errors. With
 * activations in bfloat16, the result of a product is rounded, too, and so is the sum or norm that follows: four roundings
 * for each product instead of two. */
static void check_bf16(Case *k) {
    size_t n;
    float logp[ROWS_MAX], *want = result(k, "logp", "", &n), *logits = result(k, "logits", "", &n);
    double size = 0, error = 0;
    for (size_t i = 0; i < n; i++) size += (double)logits[i] * logits[i] / (double)n;
    const double roundings = B->act_size == sizeof(float) ? 2 : 4;
    const double products = 4.0 * k->m.config.layers + 1, unit = 4 * 0x1p-9 * sqrt(roundings / 3);
    Workspace w = workspace_of(k, false, 0);
    Problem p = problem_of(k, PACKED);
    model_forward(&k->m, &w, &p.batch, 1, &(ModelOutput){.logp = logp});
    for (int t = 0; t < k->rows; t++) error += p.share[t] * pow((double)logp[t] - want[t], 2) / (k->rows - 2);
    if (!(error < unit * unit * size * products))
        fail_msg("%s, bfloat16: log-probabilities are off by %g", k->name, sqrt(error));
    loss_and_gradient(k, PACKED, 0, false);
    float *g = gradients_of(k);
    const double gap = gradient_gap(k, g, unit * sqrt(3 * products), "bfloat16");
    assert_true(gap > 0x1p-12); /* the products were rounded */
    free(g), free(want), free(logits), batch_free(&p.batch), workspace_free(&w, &k->m);
}

static void all_cases(void (*check)(Case *)) {
    for (int i = 0; i < NAMES; i++) {
        Case k = case_open(names[i], "expected.safetensors");
        check(&k);
        case_close(&k);
    }
}

static void test_forward(void **state) {
    (void)state;
    all_cases(check_forward);
}
static void test_gradients(void **state) {
    (void)state;
    all_cases(check_gradients);
}
static void test_adamw(void **state) {
    (void)state;
    all_cases(check_adamw);
}
static void test_sampler(void **state) {
    (void)state;
    all_cases(check_sampler);
}

/* A run whose longest sequence is not longer than the original context uses longrope's short list, any other the long one. */
static void test_longest(void **state) {
    (void)state;
    Case k = case_open("phi3-longrope", "expected_short.safetensors");
    const int32_t original = k.m.config.rope.original;
    assert_true(k.length[0] <= original && original < k.m.config.context);
    model_set_longest(&k.m, original);
    check_forward(&k);
    check_sampler(&k);
    case_close(&k);
    k = case_open("phi3-longrope", "expected.safetensors");
    model_set_longest(&k.m, original);
    model_set_longest(&k.m, original + 1);
    check_forward(&k);
    case_close(&k);
}

/* A single sequence begins with the short list and goes on with the long one, as transformers' generate does by itself:
 * greedy tokens before and after the original context of 24 tokens, from a short prompt and from one of 30 tokens. */
static void test_growing_sequence(void **state) {
    (void)state;
    Error e;
    size_t n;
    Sequence s;
    Sampling how = sampling_default();
    Case k = case_open("phi3-longrope", "expected_growing.safetensors");
    float *of_length = result(&k, "prompt", "", &n), *all = result(&k, "token", "", &n);
    how.temperature = 0;
    assert_true(sequence_new(&s, &k.m, k.m.config.context, &e));
    for (int run = 0; run < 2; run++) {
        const int which = run, prompt = (int)of_length[which], total = (int)n / 2;
        const float *want = all + which * total;
        int32_t tokens[ROWS_MAX], token;
        float logp;
        for (int i = 0; i < prompt; i++) tokens[i] = (int32_t)want[i];
        sequence_set(&s, tokens, prompt);
        while (s.count < total) {
            assert_true(sequence_draw(&s, &how, 0, &token, &logp, &e));
            if (token != (int32_t)want[s.count - 1])
                fail_msg("run %d, token %d is %d, transformers has %g", run, s.count - 1, token, want[s.count - 1]);
        }
    }
    sequence_free(&s);
    free(all), free(of_length);
    case_close(&k);
}

static void check_all_bf16(const Backend *b) {
    Error e;
    Device *half, *whole = D;
    const Backend *of_whole = B;
    if (!b->open(&half, DTYPE_BF16, &e)) {
        print_message("             skipped: %s\n", e.text);
        skip();
    }
    B = b;
    D = half;
    all_cases(check_bf16);
    B = of_whole;
    D = whole;
    assert_true(b->sync(half, &e));
    b->close(half);
}

static void test_bf16(void **state) {
    (void)state;
    check_all_bf16(backend_cpu());
}

static void test_bf16_activations(void **state) {
    (void)state;
    check_all_bf16(backend_cpu_for(DTYPE_BF16));
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static size_t counted;

static void *counting_alloc(Device *d, size_t bytes, const char *what, Error *e) {
    counted += bytes;
    return backend_cpu()->alloc(d, bytes, what, e);
}

static void *counting_zeroed(Device *d, size_t bytes, const char *what, Error *e) {
    void *memory = counting_alloc(d, bytes, what, e);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

static size_t counted_since(size_t *before) {
    const size_t n = counted - *before;
    *before = counted;
    return n;
}

/* What a model of this configuration takes is what was predicted: weights, gradients, frequencies, optimizer, cache,
 * sampler and activations at each level. Returns the sum. */
static size_t check_memory(const ModelConfig *c) {
    Error e;
    Model m;
    Optimizer o;
    KVCache kv;
    Rollout r;
    Backend counting = *B;
    size_t before = counted = 0;
    counting.alloc = counting_alloc;
    counting.alloc_zeroed = counting_zeroed;
    assert_true(model_new(&m, c, &counting, D, true, &e));
    assert_int_equal(counted_since(&before), model_bytes(c, &counting, true));
    assert_true(optimizer_new(&o, &m, &e));
    assert_int_equal(counted_since(&before), optimizer_bytes(c, &counting));
    assert_true(kv_new(&kv, &m, 77, &e));
    assert_int_equal(counted_since(&before), kv_bytes(c, &counting, 77));
    assert_true(rollout_new(&r, &m, 3, 40, 20, &e));
    assert_int_equal(counted_since(&before), rollout_bytes(c, &counting, 3, 40, 20));
    for (int recompute = 0; recompute <= 3; recompute++) { /* 3: for inference */
        Workspace w;
        assert_true(workspace_new(&w, &m, 100, 50, 9, recompute < 3, recompute % 3, &e));
        assert_int_equal(counted_since(&before),
                         workspace_bytes(c, &counting, 100, 50, 9, recompute < 3, recompute % 3));
        workspace_free(&w, &m);
    }
    rollout_free(&r), kv_free(&kv, &m), optimizer_free(&o, &m), model_free(&m);
    return counted;
}

/* Predictions hold, and with rotary positions nothing grows with the context. */
static void memory_of(Case *k) {
    ModelConfig c = k->m.config;
    const size_t bytes = check_memory(&c);
    c.context = 131072;
    if (c.position == POSITION_ROTARY) assert_int_equal(check_memory(&c), bytes);
    else assert_true(check_memory(&c) > bytes);
}

static void test_memory(void **state) {
    (void)state;
    all_cases(memory_of);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forward), cmocka_unit_test(test_gradients),
                                       cmocka_unit_test(test_adamw),   cmocka_unit_test(test_sampler),
                                       cmocka_unit_test(test_longest), cmocka_unit_test(test_growing_sequence),
                                       cmocka_unit_test(test_bf16),    cmocka_unit_test(test_bf16_activations),
                                       cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests_name("families", tests, open_device_one_thread, close_device);
}
