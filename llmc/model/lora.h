/* lora.h - low-rank adapters of a model: names of their targets, and adding them to the weights.
 *
 * A model whose configuration has a rank computes W x + scale B A x in the targeted projections (Hu et al. 2021,
 * arXiv:2106.09685) and trains A and B only. They are tensors of the table (tensors.h), which follow those of the
 * base. model.adapter_off leaves them out, which makes the base model a reference without a copy of its weights.
 *
 *     LoraConfig lora = {.rank = 16, .scale = 32.0f / 16};
 *     if (!lora_parse_targets("all-linear", &lora.targets, &e)) return false;
 *     float row[768];
 *     lora_merged(&model, model.tensor[TENSOR_qkvw].offset, row, 768);     // weights with the adapters added
 */
#ifndef LLMC_MODEL_LORA_H
#define LLMC_MODEL_LORA_H

#include "../base/error.h" /* error_set, Error, xmalloc */
#include "backend.h"       /* floats_at */
#include "config.h"        /* LORA_DOWN, LORA_O, LORA_OF_FC, LORA_OF_QKV, ... */
#include "model.h"         /* model_download, Model */
#include "tensors.h"       /* TensorInfo, BASE_TENSORS, FIRST_DORA_TENSOR */
#include "transformer.h"   /* LinearInfo, LINEAR_COUNT, model_linear, model_refresh_dora */

/* Sets the flags of a list of projections with commas between them: the names of modules in transformers, or
 * all-linear, as in peft. GPT-2's c_proj is both attention's output and the MLP's. */
static inline bool lora_parse_targets(const char *text, int32_t *targets, Error *e) {
    static const struct {
        const char *name;
        int32_t flags;
    } known[] = {{"all-linear", LORA_ALL},     {"q_proj", LORA_Q},        {"k_proj", LORA_K},
                 {"v_proj", LORA_V},           {"o_proj", LORA_O},        {"gate_proj", LORA_GATE},
                 {"up_proj", LORA_UP},         {"down_proj", LORA_DOWN},  {"qkv_proj", LORA_OF_QKV},
                 {"gate_up_proj", LORA_OF_FC}, {"c_attn", LORA_OF_QKV},   {"c_proj", LORA_O | LORA_DOWN},
                 {"attn.c_proj", LORA_O},      {"mlp.c_proj", LORA_DOWN}, {"c_fc", LORA_OF_FC}};
    *targets = 0;
    for (const char *s = text; *s;) {
        const size_t n = strcspn(s, ",");
        size_t i = 0;
        while (i < sizeof known / sizeof *known && (strlen(known[i].name) != n || strncmp(known[i].name, s, n))) i++;
        if (i == sizeof known / sizeof *known)
            return error_set(e,
                             "unknown projection '%.*s'; known are all-linear, q_proj, k_proj, v_proj, o_proj, "
                             "gate_proj, up_proj, down_proj, and c_attn, c_proj and c_fc of GPT-2",
                             (int)n, s);
        *targets |= known[i].flags;
        s += n + (s[n] == ',');
    }
    return *targets || error_set(e, "no projection is named");
}

/* Checks that the targets are adapters that this model can have: in GPT-2 and Phi-3 one adapter covers all projections
 * of a matrix. */
static inline bool lora_check_targets(const ModelConfig *c, Error *e) {
    static const struct {
        int projections;
        const char *one, *all;
    } matrix[] = {{LORA_OF_QKV, "q_proj, k_proj and v_proj", "c_attn or qkv_proj"},
                  {LORA_OF_FC, "gate_proj and up_proj", "c_fc or gate_up_proj"}};
    for (int i = 0; i < 2 && c->lora.rank && lora_fused(c); i++) {
        const int named = c->lora.targets & matrix[i].projections;
        if (named && named != matrix[i].projections)
            return error_set(e, "this model has one adapter for %s together: name %s", matrix[i].one, matrix[i].all);
    }
    return true;
}

/* The first element that is trained: all from it on are. */
static inline size_t model_trained_first(const Model *m) {
    return m->config.lora.rank ? m->tensor[BASE_TENSORS].offset : 0;
}

/* Adds scale B A to those elements of a matrix, layer l of a linear layer's weights, that are among elements [at, at +
 * n) of all tensors. c, t: a configuration with adapters and its tensors; a, b: the adapters of the layer; factor: of the
 * rows of the sum, in the order of b, for DoRA, or NULL; host[0]: element `at`. */
static inline void lora_add(const ModelConfig *c, const TensorInfo *t, const LinearInfo *i, size_t l, const float *a,
                            const float *b, const float *factor, size_t at, float *host, size_t n) {
    const LoraParts p = lora_parts(c, i->projections);
    const TensorInfo *matrix = &t[i->weight];
    const size_t in = matrix->columns, rank = (size_t)c->lora.rank;
    const size_t base = matrix->offset + l * matrix->rows * in;
    for (int part = 0; part < p.parts; part++, a += rank * in) {
#pragma omp parallel for schedule(static)
        for (int r = 0; r < p.count[part]; r++) {
            const size_t row = base + (size_t)(p.first[part] + r) * in;
            if (row + in <= at || row >= at + n) continue;
            const size_t first = row < at ? at - row : 0, last = row + in > at + n ? at + n - row : in;
            for (size_t k = 0; k < rank; k++) {
                const float scale = c->lora.scale * b[(size_t)r * rank + k], *x = a + k * in;
                for (size_t j = first; j < last; j++) host[row + j - at] += scale * x[j];
            }
            for (size_t j = first; factor && j < last; j++) host[row + j - at] *= factor[r];
        }
        b += (size_t)p.count[part] * rank;
        if (factor) factor += p.count[part];
    }
}

/* Downloads the factors of the rows of layer l of DoRA: factor[i->dora_m's columns]; buffer: as many. */
static inline void dora_factors(const Model *m, const LinearInfo *i, size_t l, float *factor, float *buffer) {
    const TensorInfo *t = &m->tensor[i->dora_m];
    const size_t at = t->offset + l * t->columns, first = m->tensor[FIRST_DORA_TENSOR].offset;
    model_refresh_dora(m);
    model_download(m, at, factor, t->columns);
    m->backend->download(m->device, buffer, floats_at(m->dora->norm, at - first), t->columns * sizeof *buffer);
    for (size_t r = 0; r < t->columns; r++) factor[r] /= buffer[r];
}

/* Downloads weights [at, at + n) with the adapters added, as float32. */
static inline void lora_merged(const Model *m, size_t at, float *host, size_t n) {
    model_download(m, at, host, n);
    for (int linear = 0; linear < LINEAR_COUNT; linear++) {
        const LinearInfo *i = model_linear(linear);
        const TensorInfo *t = &m->tensor[i->weight], *a = &m->tensor[i->lora_a], *b = &m->tensor[i->lora_b];
        const size_t size = t->rows * t->columns, a_size = a->rows * a->columns, b_size = b->rows * b->columns;
        if (!a->size) continue;
        const size_t outputs = m->dora ? b->rows : 0;
        float *both = (float *)xmalloc((a_size + b_size + 2 * outputs) * sizeof *both);
        float *factor = outputs ? both + a_size + b_size : NULL;
        for (size_t l = 0; l < t->layers; l++) {
            if (t->offset + l * size >= at + n || t->offset + (l + 1) * size <= at) continue;
            model_download(m, a->offset + l * a_size, both, a_size);
            model_download(m, b->offset + l * b_size, both + a_size, b_size);
            if (factor) dora_factors(m, i, l, factor, factor + outputs);
            lora_add(&m->config, m->tensor, i, l, both, both + a_size, factor, at, host, n);
        }
        free(both);
    }
}

#endif
