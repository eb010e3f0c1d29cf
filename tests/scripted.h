/* scripted.h - completions with calls of the calculator, drawn by a policy that writes given tokens.
 *
 *     Scripted s;
 *     scripted_open(&s, &text, 32, 100);
 *     scripted_run(&s, prompt, script, 2, 4, completion);     // 2 prompts of 4 completions each
 *     assert_completion(&completion[0], ids, mask, "the first one");
 *     scripted_close(&s);
 */
#ifndef TESTS_SCRIPTED_H
#define TESTS_SCRIPTED_H

#include "../llmc/base/error.h"       /* xcalloc, Error */
#include "../llmc/model/backend.h"    /* Draw */
#include "../llmc/model/batch.h"      /* Batch */
#include "../llmc/model/config.h"     /* ModelConfig, gpt2_config */
#include "../llmc/model/decode.h"     /* DecodeStep */
#include "../llmc/model/model.h"      /* Model, model_free, model_new */
#include "../llmc/model/model_text.h" /* ModelText */
#include "../llmc/model/workspace.h"  /* KVCache, Workspace */
#include "../llmc/rollout/episodes.h" /* EpisodeOptions, Episodes, episode_defaults, episodes_close, ... */
#include "../llmc/rollout/rollout.h"  /* Completion, RolloutRequest, Rollout, RolloutSlot, ... */
#include "../llmc/tools/code_tool.h"  /* CodeToolOptions */
#include "cpu_device.h"               /* B, D */
#include <jansson.h>

enum { SCRIPTED_SLOTS = 3 }; /* fewer than there are completions, so that some wait for one */

typedef struct Scripted {
    Model model;
    Rollout rollout;
    Episodes episodes;
    Sampling how;
    const RolloutRequest *request;
    const json_t *const *script;
    int32_t samples;
} Scripted;

static inline int32_t scripted_id(const json_t *list, size_t i) {
    return (int32_t)json_integer_value(json_array_get(list, i));
}

/* Draws the next token of each script. After the last one it draws the first one again: a completion that should have ended gets
 * longer than expected. */
static inline void scripted_decode(void *context, const Model *m, const Workspace *w, const KVCache *kv,
                                   const Batch *batch, Draw how, const DecodeStep *step) {
    const Scripted *s = context;
    (void)m, (void)w, (void)kv, (void)how;
    for (int t = 0; t < batch->targets; t++) {
        const RolloutSlot who = s->rollout.target[t];
        const Completion *c = &s->request[who.request].out[who.sample];
        const json_t *script = s->script[who.request * s->samples + who.sample];
        size_t drawn = 0;
        for (int32_t k = 0; k < c->count; k++) drawn += c->trajectory->drawn[k];
        step->token[t] = scripted_id(script, drawn < json_array_size(script) ? drawn : 0);
        step->logp[t] = 0;
    }
}

/* Opens an engine for prompts of up to prompt_max tokens and completions of up to max_new, which end at the stop token of the
 * text. */
static inline void scripted_open(Scripted *s, const ModelText *text, int32_t prompt_max, int32_t max_new) {
    Error e;
    const ModelConfig config = gpt2_config(1, 1, 8, text->tokenizer.vocab, prompt_max + max_new);
    const CodeToolOptions code = {.timeout = 1};
    EpisodeOptions o = episode_defaults();
    o.tools = "calculator";
    if (!model_new(&s->model, &config, B, D, false, &e) ||
        !rollout_new(&s->rollout, &s->model, SCRIPTED_SLOTS, prompt_max, max_new, &e) ||
        !episodes_open(&s->episodes, &o, &code, text, SCRIPTED_SLOTS, "test", 1, &e))
        fail_msg("%s", e.text);
    s->how = sampling_default();
    s->how.max_new = max_new;
    assert_true(sampling_add_stop(&s->how, text->stop, &e));
    s->rollout.turns = &s->episodes.turns;
    s->rollout.decode = scripted_decode;
    s->rollout.decode_context = s;
}

/* Draws the completions of prompts. prompt: (prompts) and script: (prompts x samples) lists of tokens. out: (prompts x samples)
 * completions, which the caller frees. */
static inline void scripted_run(Scripted *s, const json_t *const *prompt, const json_t *const *script, int prompts,
                                int32_t samples, Completion *out) {
    Error e;
    RolloutRequest *request = xcalloc((size_t)prompts, sizeof *request);
    int32_t **ids = xcalloc((size_t)prompts, sizeof *ids);
    for (int i = 0; i < prompts; i++) {
        const size_t n = json_array_size(prompt[i]);
        ids[i] = xcalloc(n, sizeof **ids);
        for (size_t k = 0; k < n; k++) ids[i][k] = scripted_id(prompt[i], k);
        request[i] = (RolloutRequest){.prompt = ids[i],
                                      .prompt_len = (int32_t)n,
                                      .samples = samples,
                                      .id = (uint64_t)(i * samples),
                                      .out = &out[i * samples]};
    }
    s->request = request;
    s->script = script;
    s->samples = samples;
    if (!rollout_run(&s->rollout, &s->how, request, prompts, NULL, NULL, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < prompts; i++) free(ids[i]);
    free(ids), free(request);
}

static inline void scripted_close(Scripted *s) {
    episodes_close(&s->episodes);
    rollout_free(&s->rollout);
    model_free(&s->model);
}

/* A completion has these tokens, of which those with mask 1 were drawn. */
static inline void assert_completion(const Completion *c, const json_t *ids, const json_t *mask, const char *what) {
    if (c->count != (int32_t)json_array_size(ids))
        fail_msg("%s: %d tokens, not %zu", what, c->count, json_array_size(ids));
    for (int32_t k = 0; k < c->count; k++) {
        const int32_t token = scripted_id(ids, (size_t)k), drawn = scripted_id(mask, (size_t)k);
        if (c->tokens[k] != token || c->trajectory->drawn[k] != drawn)
            fail_msg("%s, token %d: %d, drawn %d; not %d, drawn %d", what, k, c->tokens[k], c->trajectory->drawn[k],
                     token, drawn);
    }
}

#endif
