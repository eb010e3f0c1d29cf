/* mixture.h - sampling from the geometric mixture of two models, the opponent of Nash-MD.
 *
 *     softmax((1 - c) log pi + c log ref)
 *
 * Logits are the product of the head's input and the token embeddings, so the mixture's are a single product, too:
 *
 *     (1 - c) z_pi + c z_ref = [h_pi | h_ref] [(1 - c) wte_pi | c wte_ref]^T
 *
 * The normalisers add the same constant to all tokens, which the softmax cancels. The backend samples from it as from
 * any head, here with C_pi + C_ref channels: exactly, with temperature and all other settings of Draw. The
 * log-probabilities returned are those of the mixture. Models that cap their logits (Gemma 2) have no such product and
 * are refused.
 *
 * Owns the reference's activations and cache, and the joined embeddings, which mixture_refresh() updates after a change
 * of the policy. The caller owns the models and the engine.
 *
 *     Rollout engine;
 *     Mixture m;
 *     rollout_new(&engine, &policy, slots, prompt_max, new_max, &e);
 *     mixture_new(&m, &engine, &reference, 0.5, &e);
 *     mixture_refresh(&m);
 *     rollout_run(&engine, &sampling, requests, n, NULL, NULL, &e);
 *     mixture_free(&m);
 */
#ifndef LLMC_ROLLOUT_MIXTURE_H
#define LLMC_ROLLOUT_MIXTURE_H

#include "../base/error.h"      /* xmalloc, error_set, Error, xcalloc */
#include "../model/backend.h"   /* Backend, Acts, ROW_ALIGN, Weights, ... */
#include "../model/batch.h"     /* Batch */
#include "../model/config.h"    /* ModelConfig */
#include "../model/decode.h"    /* decode_rows, DecodeStep, decode_draw */
#include "../model/model.h"     /* Model, model_download, model_output_tensor */
#include "../model/workspace.h" /* KVCache, WORK_h, Workspace, work_acts, ... */
#include "rollout.h"            /* Rollout, rollout_bytes, rollout_rows */

typedef struct Mixture {
    const Model *policy, *reference;
    double coef; /* c, the weight of the reference */
    int channels;
    Workspace work; /* the reference's */
    KVCache kv;
    Acts *h;      /* (targets, channels) */
    Weights *wte; /* (Vp, channels) */
    size_t weights;
} Mixture;

static inline size_t mixture_targets(const Rollout *r) {
    return ((size_t)r->work.targets + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN;
}

/* Bytes that a Mixture allocates in addition to its engine. */
static inline size_t mixture_bytes(const ModelConfig *policy, const ModelConfig *reference, const Backend *b, int slots,
                                   int prompt_max, int new_max) {
    const int rows = rollout_rows(slots, prompt_max);
    const size_t channels = (size_t)(policy->width + reference->width);
    return rollout_bytes(reference, b, slots, prompt_max, new_max) + (size_t)rows * channels * b->act_size +
           (size_t)policy->padded_vocab * channels * (b->weight_size + sizeof(float));
}

/* Computes [(1 - c) wte_pi | c wte_ref] from the current weights. */
static inline void mixture_refresh(Mixture *m) {
    const Backend *b = m->policy->backend;
    const Model *model[] = {m->policy, m->reference};
    const size_t V = (size_t)m->policy->config.padded_vocab, C = (size_t)m->channels;
    float *host = (float *)xcalloc(V * C, sizeof *host);
    for (int k = 0, at = 0; k < 2; at += model[k++]->config.width) {
        const size_t width = (size_t)model[k]->config.width;
        const float share = (float)(k ? m->coef : 1 - m->coef);
        float *wte = (float *)xmalloc(V * width * sizeof *wte);
        model_download(model[k], model[k]->tensor[model_output_tensor(&model[k]->config)].offset, wte, V * width);
        for (size_t v = 0; v < V; v++)
            for (size_t c = 0; c < width; c++) host[v * C + (size_t)at + c] = share * wte[v * width + c];
        free(wte);
    }
    b->weights_upload(m->policy->device, m->wte, host, V * C);
    free(host);
}

/* Concatenates the rows of both heads' inputs. On the host they are bytes of an unknown type. */
static inline void mixture_join(const Mixture *m, const Acts *policy, const Acts *reference, size_t R) {
    const Backend *b = m->policy->backend;
    Device *d = m->policy->device;
    const size_t one = (size_t)m->policy->config.width * b->act_size;
    const size_t two = (size_t)m->reference->config.width * b->act_size;
    char *x = (char *)xmalloc(R * one), *y = (char *)xmalloc(R * two), *both = (char *)xmalloc(R * (one + two));
    b->download(d, x, policy, R * one);
    b->download(d, y, reference, R * two);
    for (size_t r = 0; r < R; r++) {
        memcpy(both + r * (one + two), x + r * one, one);
        memcpy(both + r * (one + two) + one, y + r * two, two);
    }
    b->upload(d, m->h, both, R * (one + two));
    free(x), free(y), free(both);
}

/* Like model_decode(), for two models with the same rows and the same cache rows. Used as Rollout.decode. */
static inline void mixture_decode(void *context, const Model *policy, const Workspace *w, const KVCache *kv,
                                  const Batch *batch, Draw how, const DecodeStep *step) {
    const Mixture *m = (const Mixture *)context;
    const size_t R = (size_t)batch->targets;
    decode_rows(m->reference, &m->work, &m->kv, batch, step);
    decode_rows(policy, w, kv, batch, step);
    if (R == 0) return;
    mixture_join(m, work_acts(w, WORK_h, 0), work_acts(&m->work, WORK_h, 0), R);
    how.weight = m->wte;
    how.channels = m->channels;
    decode_draw(policy, w, how, step, m->h, R);
}

static inline void mixture_free(Mixture *m) {
    if (!m->policy) return;
    const Backend *b = m->policy->backend;
    workspace_free(&m->work, m->reference);
    kv_free(&m->kv, m->reference);
    if (m->h) b->release(m->policy->device, m->h);
    if (m->wte) b->weights_release(m->policy->device, m->wte, m->weights);
    *m = (Mixture){0};
}

/* Makes `engine`, whose model is the policy, sample from the mixture. The vocabulary and the context of the reference
 * must be at least the policy's. */
static inline bool mixture_new(Mixture *m, Rollout *engine, const Model *reference, double coef, Error *e) {
    const Model *policy = engine->model;
    const Backend *b = policy->backend;
    if (policy->config.logit_cap > 0 || reference->config.logit_cap > 0)
        return error_set(e, "the mixture of two models cannot be sampled if one of them caps its logits");
    if (reference->config.padded_vocab < policy->config.padded_vocab)
        return error_set(e,
                         "the mixture of two models needs a reference with as many rows of its output matrix, %d, as "
                         "the policy has, %d",
                         reference->config.padded_vocab, policy->config.padded_vocab);
    *m = (Mixture){.policy = policy, .reference = reference, .coef = coef};
    m->channels = policy->config.width + reference->config.width;
    m->weights = (size_t)policy->config.padded_vocab * (size_t)m->channels;
    const bool ok = workspace_new(&m->work, reference, engine->work.rows, engine->work.targets, engine->work.segments,
                                  false, 0, e) &&
                    kv_new(&m->kv, reference, engine->kv.rows, e);
    const size_t rows = mixture_targets(engine) * (size_t)m->channels * b->act_size;
    if (ok) m->h = (Acts *)b->alloc(policy->device, rows, "mixture", e);
    if (m->h) m->wte = (Weights *)b->alloc(policy->device, m->weights * b->weight_size, "mixture's embeddings", e);
    if (!m->wte) {
        mixture_free(m);
        return false;
    }
    b->zero(policy->device, m->h, rows);
    engine->decode = mixture_decode;
    engine->decode_context = m;
    return true;
}

#endif
