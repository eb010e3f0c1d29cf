/* adapted.h - what tests of small models with adapters share: random weights, a batch and its gradients, and the checks that
 * recomputation changes no bit and that the sampler agrees with the trainer. The device is open (cpu_device.h).
 *
 *     Model m;
 *     if (!model_new(&m, &config, B, D, true, &e)) fail_msg("%s", e.text);       // config: VOCAB tokens, CONTEXT positions
 *     adapted_randomize(&m, 3);
 *     adapted_check_rollout(&m);
 */
#ifndef TESTS_ADAPTED_H
#define TESTS_ADAPTED_H

#include "../llmc/base/error.h"        /* Error, xmalloc */
#include "../llmc/base/random.h"       /* Random, random_start, random_below, random_normal */
#include "../llmc/model/batch.h"       /* Batch */
#include "../llmc/model/model.h"       /* Model, model_settle_grads, model_upload, model_zero_grads */
#include "../llmc/model/pack.h"        /* batch_new, batch_segment, batch_completion, batch_free, ... */
#include "../llmc/model/tensors.h"     /* INIT_ONE, TENSOR_COUNT */
#include "../llmc/model/transformer.h" /* ModelOutput, model_forward, model_backward */
#include "../llmc/model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "../llmc/rollout/rollout.h"   /* Completion, Rollout, RolloutRequest, Sampling, ... */
#include "cpu_device.h"                /* B, D */

enum { VOCAB = 37, CONTEXT = 24, ROWS = 64 };

/* Sets all weights to random values, also those of b, which a new adapter sets to 0. */
static inline void adapted_randomize(const Model *m, uint64_t seed) {
    Random r = random_start(seed, 0);
    float *host = (float *)xmalloc(m->parameters * sizeof *host);
    for (size_t i = 0; i < m->parameters; i++) host[i] = (float)(0.2 * random_normal(&r));
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (size_t k = 0; m->tensor[i].init == INIT_ONE && k < m->tensor[i].size; k++)
            host[m->tensor[i].offset + k] += 1;
    model_upload(m, 0, host, m->parameters);
    free(host);
}

static inline Batch adapted_batch(uint64_t seed) {
    Batch b = batch_new(ROWS, ROWS, 8);
    Random r = random_start(seed, 3);
    for (int i = 0; i < 3; i++) {
        int32_t tokens[16];
        const int n = 6 + 3 * i;
        for (int k = 0; k < n; k++) tokens[k] = (int32_t)random_below(&r, VOCAB);
        batch_segment(&b, tokens, n, 0, -1);
        for (int k = 0; k < n - 1; k++) batch_target(&b, b.rows - n + k, tokens[k + 1]);
    }
    return b;
}

/* Log-probabilities, and gradients of sum_i (i mod 5 - 2) logp_i / 8. */
static inline void adapted_pass(Model *m, const Batch *b, int recompute, float *logp, float *grads) {
    Error e;
    Workspace w;
    if (!workspace_new(&w, m, b->rows, b->targets, b->segments, true, recompute, &e)) fail_msg("%s", e.text);
    float dlogp[ROWS];
    for (int i = 0; i < b->targets; i++) dlogp[i] = (float)(i % 5 - 2) / 8;
    model_zero_grads(m);
    model_forward(m, &w, b, 1, &(ModelOutput){.logp = logp});
    model_backward(m, &w, b, 1, dlogp, NULL, NULL);
    model_settle_grads(m);
    B->download(D, grads, m->grads, m->grads_count * sizeof *grads);
    workspace_free(&w, m);
}

/* Every level of recomputation gives the bits of logp and grads, which are those without: the same operations on the same
 * numbers. */
static inline void adapted_check_recompute(Model *m, const Batch *b, const float *logp, const float *grads) {
    float again[ROWS], *got = (float *)xmalloc(m->grads_count * sizeof *got);
    for (int recompute = 1; recompute < 3; recompute++) {
        adapted_pass(m, b, recompute, again, got);
        assert_memory_equal(logp, again, (size_t)b->targets * sizeof(float));
        assert_memory_equal(grads, got, m->grads_count * sizeof(float));
    }
    free(got);
}

/* The sampler runs few rows at a time, which is other code: its log-probabilities equal the trainer's within 1e-4, as in
 * test_rollout.c. */
static inline void adapted_check_rollout(const Model *m) {
    Error e;
    for (int slots = 1; slots <= 12; slots += 11) {
        Rollout r;
        Completion out[12];
        const int32_t prompt[] = {3, 1, 4, 1, 5};
        RolloutRequest request = {.prompt = prompt, .prompt_len = 5, .samples = 12, .out = out};
        Sampling s = sampling_default();
        s.max_new = 10;
        s.seed = 9;
        memset(out, 0, sizeof out);
        assert_true(rollout_new(&r, m, slots, 5, 10, &e));
        if (!rollout_run(&r, &s, &request, 1, NULL, NULL, &e)) fail_msg("%s", e.text);
        for (int i = 0; i < 12; i++) {
            Batch b = batch_new(ROWS, ROWS, 8);
            Workspace w;
            float logp[ROWS];
            const int before = batch_segment(&b, prompt, 5, 0, -1);
            batch_completion(&b, before, out[i].tokens, NULL, out[i].count);
            assert_true(workspace_new(&w, m, b.rows, b.targets, b.segments, false, 0, &e));
            model_forward(m, &w, &b, 1, &(ModelOutput){.logp = logp});
            for (int t = 0; t < out[i].count; t++) assert_true(fabs(logp[t] - out[i].logp[t]) < 1e-4);
            workspace_free(&w, m), batch_free(&b), completion_free(&out[i]);
        }
        rollout_free(&r);
    }
}

#endif
