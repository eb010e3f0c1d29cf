/* gguf_save.h - models written as GGUF files (gguf.h), which llama.cpp and ollama load as they are.
 *
 * Matrices have the type that the caller chooses, F16, BF16, Q8_0 or F32; those whose rows are not whole blocks are F16,
 * and norms, biases and learned positions F32, as by llama.cpp's converter (conversion/base.py). Entries have the names
 * and types that the converter gives them. The tokenizer comes from a GgufTokenizer or, with all other entries general.*
 * and tokenizer.*, from the GGUF file that the model was loaded from.
 *
 * Refused are configurations that llama.cpp would compute differently because a file has no place for a field, such as
 * SmolLM3 with other layers without rotary positions (gguf_check_config()). A window of an architecture that has none in
 * its files (Mistral, Qwen) shortens the context to the part in which it has no effect.
 *
 *     GgufTokenizer t = {0};                          // filled in by the caller, or by gguf_tokenizer()
 *     const GgufOut out = {.type = QUANT_Q8_0, .name = "my model", .tokenizer = &t};
 *     GgufGet get = NULL;                             // returns elements of a tensor (model_gguf.h has one for a Model)
 *     return gguf_save(&model.config, &out, "out.gguf", get, &model, e);
 */
#ifndef LLMC_MODEL_GGUF_SAVE_H
#define LLMC_MODEL_GGUF_SAVE_H

#include "../base/error.h"          /* Error, xmalloc, error_set */
#include "../base/text.h"           /* TextSlice, text_append */
#include "../text/tokenizer_gguf.h" /* GGUF_TOKEN_NORMAL, GGUF_TOKEN_UNUSED */
#include "backend.h"                /* QuantType, QUANT_F32, QUANT_F16, NORM_RMS, ... */
#include "config.h"                 /* ModelConfig, ROPE_LONGROPE, FAMILY_PHI3, Rope, ... */
#include "gguf.h"                   /* GgufWriter, gguf_put_text, gguf_is, gguf_text, ... */
#include "gguf_config.h"            /* GgufKeys, gguf_architecture_of, gguf_key, GGUF_FACTORS, ... */
#include "gguf_model.h"             /* GGUF_ADDS, GGUF_IDS, GgufPart, GgufParts, ... */
#include "quantized.h"              /* quant_info */
#include "tensors.h"                /* TENSOR_wpe */
#include <math.h>

/* Reads elements first ... first + n - 1 of a layer of a tensor of the model. */
typedef bool (*GgufGet)(void *context, int tensor, int layer, size_t first, float *values, size_t n, Error *e);

typedef struct GgufOut {
    QuantType type;                 /* of matrices: F32, F16, BF16, Q8_0 or Q4_0 */
    const char *name;               /* general.name; NULL: that of `carry` */
    const GgufTokenizer *tokenizer; /* NULL: the file gets that of `carry`, if any */
    const Gguf *carry;              /* a file whose entries general.* and tokenizer.* are kept; or NULL */
} GgufOut;

/* Whether the layers with a window are those of llama.cpp's period (0: all). */
static inline bool gguf_usual_windows(const ModelConfig *c, int period) {
    for (int l = 0; l < c->layers; l++)
        if (!(c->layer[l] & LAYER_WINDOW) != (period && l % period == period - 1)) return false;
    return true;
}

static inline bool gguf_any_window(const ModelConfig *c) {
    bool any = false;
    for (int l = 0; l < c->layers; l++) any = any || c->layer[l] & LAYER_WINDOW;
    return any && c->window;
}

/* The context that is written. An architecture without windows in the file gets the part of the context in which they
 * have no effect. */
static inline int32_t gguf_context(const ModelConfig *c) {
    const bool in_file = c->family == FAMILY_PHI3 || gguf_architecture_of(c->family)->gemma;
    return !in_file && gguf_any_window(c) && c->window < c->context ? c->window : c->context;
}

static inline bool gguf_near(float a, float b) { return fabsf(a - b) <= 1e-6f * fabsf(b); }

static inline bool gguf_usual_no_rope(const ModelConfig *c) {
    for (int l = 0; l < c->layers; l++)
        if (!(c->layer[l] & LAYER_NO_ROPE) != !(c->family == FAMILY_SMOLLM3 && l % 4 == 3)) return false;
    return true;
}

/* Checks that the file can say all of the configuration, so that llama.cpp computes what this project does. */
static inline bool gguf_check_config(const ModelConfig *c, const char *path, Error *e) {
    const GgufArchitecture *a = gguf_architecture_of(c->family);
    const bool gemma2 = c->family == FAMILY_GEMMA2, gemma3 = c->family == FAMILY_GEMMA3;
    ModelConfig usual = *c;
    gguf_apply_architecture(a, &usual);
    const float scale = a->gemma ? gguf_gemma_scale(c) : 1.0f / sqrtf((float)c->head_size);
    const float local = gemma3 && gguf_any_window(c) ? c->local_rope.theta : 1;
    const struct {
        bool fits;
        const char *what;
    } checks[] = {
        {!c->value_head, "a value head"},
        {usual.norm == c->norm && usual.norm_place == c->norm_place && usual.norm_plus_one == c->norm_plus_one,
         "these norms"},
        {usual.qk_norm == c->qk_norm, "this norm of queries and keys"},
        {usual.position == c->position && usual.mlp == c->mlp, "these positions or this MLP"},
        {usual.embed_scale == c->embed_scale || gguf_near(usual.embed_scale, c->embed_scale), "this embedding scale"},
        {!c->score_scale || gguf_near(c->score_scale, scale), "this scale of scores"},
        {c->score_scale || !a->gemma || gguf_near(scale, 1.0f / sqrtf((float)c->head_size)), "this scale of scores"},
        {gemma2 ? c->score_cap > 0 : !c->score_cap, "this cap of scores"},
        {gemma2 ? c->logit_cap > 0 : gemma3 || !c->logit_cap, "this cap of logits"},
        {a->biases || (!c->attproj_bias && !c->mlp_bias), "biases of attention's output or of the MLP"},
        {!gemma2 || c->tied, "an output matrix of its own"},
        {!a->permuted || c->rotary == c->head_size, "heads that are rotated in part"},
        {gguf_usual_no_rope(c), "these layers without rotary positions"},
        {c->family != FAMILY_PHI3 || !c->window || gguf_usual_windows(c, 0), "windows in some layers"},
        {!gemma2 || c->window, "no window"},
        {c->rope.kind != ROPE_YARN || !c->rope.exact, "yarn without rounding"},
        {c->rope.kind != ROPE_LONGROPE || c->rope.list_count == c->rotary / 2, "lists of another length"},
        {gemma3 || !c->local_rope.theta, "a second base of rotary positions"},
        {local > 0 && c->local_rope.kind == ROPE_DEFAULT, "these rotary positions of the layers with a window"}};
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
        if (!checks[i].fits)
            return error_set(e, "%s: a GGUF file of architecture %s cannot have %s", path, a->name, checks[i].what);
    return true;
}

static inline bool gguf_factors_in_one(const Rope *r) {
    return r->kind == ROPE_LLAMA3 ||
           (r->kind == ROPE_LONGROPE && r->attention == 1 &&
            !memcmp(r->short_list, r->long_list, (size_t)r->list_count * sizeof *r->short_list));
}

/* The factors of frequencies that are tensors of the file. */
static inline void gguf_plan_rope(GgufWriter *w, const ModelConfig *c) {
    const size_t n = (size_t)c->rotary / 2;
    if (gguf_factors_in_one(&c->rope)) gguf_plan(w, "rope_freqs.weight", QUANT_F32, 1, &n);
    else if (c->rope.kind == ROPE_LONGROPE) {
        gguf_plan(w, "rope_factors_long.weight", QUANT_F32, 1, &n);
        gguf_plan(w, "rope_factors_short.weight", QUANT_F32, 1, &n);
    }
}

static inline bool gguf_put_rope(GgufWriter *w, const ModelConfig *c, Error *e) {
    const size_t n = (size_t)c->rotary / 2;
    const Rope *r = &c->rope;
    float factors[GGUF_FACTORS];
    if (r->kind == ROPE_LLAMA3) {
        for (size_t j = 0; j < n; j++) factors[j] = (float)gguf_llama3_factor(r, c->rotary, (int)j);
        return gguf_put_values(w, factors, n, e);
    }
    if (r->kind != ROPE_LONGROPE) return true;
    return gguf_put_values(w, r->long_list, n, e) &&
           (gguf_factors_in_one(r) || gguf_put_values(w, r->short_list, n, e));
}

/* The type in which a part is stored: norms, biases and positions as F32, and rows that are not whole blocks as F16, as
 * in llama.cpp. */
static inline QuantType gguf_part_type(const GgufPart *p, QuantType type) {
    if (p->vector || p->tensor == TENSOR_wpe) return QUANT_F32;
    return p->columns % quant_info(type)->values ? QUANT_F16 : type;
}

static inline void gguf_plan_parts(GgufWriter *w, const GgufParts *p, QuantType type) {
    for (size_t i = 0; i < p->count; i++) {
        const GgufPart *part = &p->part[i];
        if (part->file_first) continue; /* rows of the tensor before */
        const size_t ne[2] = {part->vector ? part->file_rows : part->columns, part->file_rows};
        gguf_plan(w, part->name, gguf_part_type(part, type), part->vector ? 1 : 2, ne);
    }
}

/* Writes all rows of a part. buffer: two chunks. */
static inline bool gguf_save_part(GgufWriter *w, const GgufPart *p, float *buffer, size_t chunk, GgufGet get,
                                  void *context, Error *e) {
    for (size_t done = 0; done < p->rows;) {
        const size_t rows = gguf_chunk_rows(p, done), n = rows * p->columns;
        float *values = buffer;
        if (!get(context, p->tensor, p->layer, (p->first + done) * p->columns, values, n, e)) return false;
        if (p->head) {
            values = buffer + chunk;
            gguf_permute(p, buffer, values, rows, p->columns * sizeof *values, false);
        }
        for (size_t i = 0; p->plus_one && i < n; i++) values[i] += 1;
        if (!gguf_put_values(w, values, n, e)) return false;
        done += rows;
    }
    return true;
}

/* Entries of another file that this one sets itself. */
static inline bool gguf_replaced(TextSlice key, const GgufOut *o) {
    static const char *const always[] = {"general.architecture", "general.type", "general.file_type",
                                         "general.alignment", "general.quantization_version"};
    static const char *const tokenizer[] = {
        "tokenizer.ggml.model",  "tokenizer.ggml.pre",    "tokenizer.ggml.tokens",  "tokenizer.ggml.token_type",
        "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.chat_template"};
    for (size_t i = 0; i < sizeof always / sizeof *always; i++)
        if (gguf_is(key, always[i])) return true;
    if (o->name && gguf_is(key, "general.name")) return true;
    for (size_t i = 0; o->tokenizer && i < sizeof tokenizer / sizeof *tokenizer; i++)
        if (gguf_is(key, tokenizer[i])) return true;
    for (int i = 0; o->tokenizer && i < GGUF_IDS; i++)
        if (gguf_is(key, gguf_id_key[i])) return true;
    for (int i = 0; o->tokenizer && i < GGUF_ADDS; i++)
        if (gguf_is(key, gguf_add_key[i])) return true;
    return false;
}

static inline void gguf_put_carried(GgufWriter *w, const GgufOut *o) {
    for (size_t i = 0; o->carry && i < o->carry->entry_count; i++) {
        const GgufEntry *entry = &o->carry->entries[i];
        if ((gguf_begins(entry->key, "general.") || gguf_begins(entry->key, "tokenizer.")) &&
            !gguf_replaced(entry->key, o))
            gguf_put_entry(w, entry);
    }
}

/* Writes one text, number and type per row of the embeddings. Rows without a token get [PAD<id>] of type unused, as by
 * llama.cpp's converter. */
static inline void gguf_put_tokens(GgufWriter *w, const GgufTokenizer *t, size_t rows) {
    char(*pad)[32] = xmalloc((rows - t->count + 1) * sizeof *pad);
    TextSlice *tokens = (TextSlice *)xmalloc(rows * sizeof *tokens);
    int32_t *types = (int32_t *)xmalloc(rows * sizeof *types);
    float *scores = (float *)xmalloc(rows * sizeof *scores);
    for (size_t i = 0; i < rows; i++) {
        const bool given = i < t->count;
        if (!given) snprintf(pad[i - t->count], sizeof *pad, "[PAD%zu]", i);
        tokens[i] = given ? t->tokens[i] : gguf_text(pad[i - t->count]);
        types[i] = !given ? GGUF_TOKEN_UNUSED : t->types ? t->types[i] : GGUF_TOKEN_NORMAL;
        scores[i] = given && t->scores ? t->scores[i] : -10000;
    }
    gguf_put_texts(w, "tokenizer.ggml.tokens", tokens, rows);
    gguf_put_integers(w, "tokenizer.ggml.token_type", types, rows);
    if (t->scores) gguf_put_numbers(w, "tokenizer.ggml.scores", scores, rows);
    free(pad), free(tokens), free(types), free(scores);
}

static inline void gguf_put_tokenizer(GgufWriter *w, const GgufTokenizer *t, size_t rows) {
    const int32_t id[GGUF_IDS] = {t->bos, t->eos, t->eot, t->eom, t->unknown, t->padding};
    const int add[GGUF_ADDS] = {t->add_bos, t->add_eos, t->add_space_prefix};
    gguf_put_text(w, "tokenizer.ggml.model", t->model);
    if (t->pre.length) gguf_put_text(w, "tokenizer.ggml.pre", t->pre);
    gguf_put_tokens(w, t, rows);
    if (t->merges) gguf_put_texts(w, "tokenizer.ggml.merges", t->merges, t->merge_count);
    for (int i = 0; i < GGUF_IDS; i++)
        if (id[i] >= 0) gguf_put_u32(w, gguf_id_key[i], (uint32_t)id[i]);
    for (int i = 0; i < GGUF_ADDS; i++)
        if (add[i] >= 0) gguf_put_flag(w, gguf_add_key[i], add[i]);
    if (t->chat_template.text) gguf_put_text(w, "tokenizer.chat_template", t->chat_template);
}

/* Writes the entry ARCHITECTURE.`suffix`. */
static inline void gguf_put_key_u32(GgufWriter *w, const GgufKeys *k, const char *suffix, int32_t value) {
    char key[128];
    gguf_put_u32(w, gguf_key(k, suffix, key), (uint32_t)value);
}
static inline void gguf_put_key_f32(GgufWriter *w, const GgufKeys *k, const char *suffix, float value) {
    char key[128];
    gguf_put_f32(w, gguf_key(k, suffix, key), value);
}
static inline void gguf_put_key_text(GgufWriter *w, const GgufKeys *k, const char *suffix, const char *value) {
    char key[128];
    gguf_put_text(w, gguf_key(k, suffix, key), gguf_text(value));
}

static inline void gguf_put_yarn(GgufWriter *w, const GgufKeys *k, const Rope *r) {
    const float usual = (float)(0.1 * log((double)r->factor) + 1);
    gguf_put_key_text(w, k, "rope.scaling.type", "yarn");
    gguf_put_key_f32(w, k, "rope.scaling.factor", r->factor);
    gguf_put_key_u32(w, k, "rope.scaling.original_context_length", r->original);
    if (r->attention > 0) gguf_put_key_f32(w, k, "rope.scaling.attn_factor", r->attention / usual);
    if (r->beta_fast > 0) gguf_put_key_f32(w, k, "rope.scaling.yarn_beta_fast", r->beta_fast);
    if (r->beta_slow > 0) gguf_put_key_f32(w, k, "rope.scaling.yarn_beta_slow", r->beta_slow);
}

static inline void gguf_put_positions(GgufWriter *w, const GgufKeys *k, const ModelConfig *c) {
    const Rope *r = &c->rope;
    gguf_put_key_u32(w, k, "rope.dimension_count", c->rotary);
    gguf_put_key_f32(w, k, "rope.freq_base", r->theta);
    if (r->kind == ROPE_YARN) gguf_put_yarn(w, k, r);
    else if (r->kind == ROPE_LINEAR) {
        gguf_put_key_text(w, k, "rope.scaling.type", "linear");
        gguf_put_key_f32(w, k, "rope.scaling.factor", r->factor);
    } else if (r->kind == ROPE_LONGROPE && !gguf_factors_in_one(r)) {
        const double derived = r->factor > 1 ? sqrt(1 + log((double)r->factor) / log((double)r->original)) : 1;
        gguf_put_key_u32(w, k, "rope.scaling.original_context_length", r->original);
        gguf_put_key_f32(w, k, "rope.scaling.attn_factor", r->attention > 0 ? r->attention : (float)derived);
    } else if (c->family == FAMILY_PHI3) gguf_put_key_u32(w, k, "rope.scaling.original_context_length", c->context);
    if (c->local_rope.theta > 0) gguf_put_key_f32(w, k, "rope.freq_base_swa", c->local_rope.theta);
}

static inline void gguf_put_windows(GgufWriter *w, const GgufKeys *k, const ModelConfig *c) {
    const int period = c->family == FAMILY_GEMMA2 ? 2 : c->family == FAMILY_GEMMA3 ? 6 : 0;
    char key[128];
    if (!k->a->gemma && c->family != FAMILY_PHI3) return;
    gguf_put_key_u32(w, k, "attention.sliding_window", c->window);
    if (!c->window || gguf_usual_windows(c, period)) return;
    gguf_put_array(w, gguf_key(k, "attention.sliding_window_pattern", key), GGUF_BOOL, (size_t)c->layers);
    for (int l = 0; l < c->layers; l++) text_append(&w->entries, c->layer[l] & LAYER_WINDOW ? "\1" : "\0", 1);
}

/* The entries of the configuration, in the order of llama.cpp's converter. */
static inline void gguf_put_config(GgufWriter *w, const ModelConfig *c) {
    const GgufKeys k = {.a = gguf_architecture_of(c->family)};
    gguf_put_key_u32(w, &k, "block_count", c->layers);
    gguf_put_key_u32(w, &k, "context_length", gguf_context(c));
    gguf_put_key_u32(w, &k, "embedding_length", c->width);
    gguf_put_key_u32(w, &k, "feed_forward_length", c->hidden);
    gguf_put_key_u32(w, &k, "attention.head_count", c->heads);
    gguf_put_key_u32(w, &k, "attention.head_count_kv", c->kv_heads);
    gguf_put_key_u32(w, &k, "attention.key_length", c->head_size);
    gguf_put_key_u32(w, &k, "attention.value_length", c->head_size);
    gguf_put_key_f32(w, &k, c->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
                     c->norm_eps);
    gguf_put_key_u32(w, &k, "vocab_size", c->vocab);
    if (c->position == POSITION_ROTARY) gguf_put_positions(w, &k, c);
    gguf_put_windows(w, &k, c);
    if (c->score_cap > 0) gguf_put_key_f32(w, &k, "attn_logit_softcapping", c->score_cap);
    if (c->logit_cap > 0) gguf_put_key_f32(w, &k, "final_logit_softcapping", c->logit_cap);
}

/* general.file_type (llama.h, llama_ftype). */
static inline uint32_t gguf_file_type(QuantType type) {
    switch (type) {
    case QUANT_F16: return 1;
    case QUANT_Q4_0: return 2;
    case QUANT_Q8_0: return 7;
    case QUANT_BF16: return 32;
    default: return 0;
    }
}

static inline void gguf_put_head(GgufWriter *w, const ModelConfig *c, const GgufOut *o) {
    gguf_put_text(w, "general.architecture", gguf_text(gguf_architecture_of(c->family)->name));
    gguf_put_text(w, "general.type", gguf_text("model"));
    if (o->name) gguf_put_text(w, "general.name", gguf_text(o->name));
    gguf_put_u32(w, "general.file_type", gguf_file_type(o->type));
    gguf_put_u32(w, "general.quantization_version", 2);
    gguf_put_config(w, c);
    if (o->tokenizer) gguf_put_tokenizer(w, o->tokenizer, (size_t)c->vocab);
    gguf_put_carried(w, o);
}

static inline bool gguf_write(GgufWriter *w, const ModelConfig *c, const GgufParts *p, const char *path, GgufGet get,
                              void *context, Error *e) {
    const size_t chunk = gguf_largest_chunk(p);
    float *buffer = (float *)xmalloc(2 * chunk * sizeof *buffer);
    bool ok = gguf_begin(w, path, e) && gguf_put_rope(w, c, e);
    for (size_t i = 0; ok && i < p->count; i++) ok = gguf_save_part(w, &p->part[i], buffer, chunk, get, context, e);
    free(buffer);
    return ok && gguf_commit(w, e);
}

/* A GgufTokenizer may have fewer tokens than the model; a carried tokenizer is copied, so it must fit exactly. */
static inline bool gguf_check_vocabulary(const ModelConfig *c, const GgufOut *o, const char *path, Error *e) {
    const bool given = o->tokenizer && o->tokenizer->count;
    const GgufEntry *carried = o->carry && !given ? gguf_find(o->carry, "tokenizer.ggml.tokens") : NULL;
    if (given && o->tokenizer->count > (size_t)c->vocab)
        return error_set(e, "%s: the tokenizer has %zu tokens, the model %d", path, o->tokenizer->count, c->vocab);
    if (carried && carried->count != (uint64_t)c->vocab)
        return error_set(e, "%s: the tokenizer of %s has %llu tokens, the model %d", path, o->carry->name,
                         (unsigned long long)carried->count, c->vocab);
    return true;
}

/* Writes a model. `get` gives the values of its tensors, each once. Refused: configurations that GGUF cannot describe
 * (gguf_check_config()), tokenizers with more tokens than the model, and values that the type cannot store. */
static inline bool gguf_save(const ModelConfig *c, const GgufOut *o, const char *path, GgufGet get, void *context,
                             Error *e) {
    GgufWriter w;
    if (!quant_info(o->type)->encodes)
        return error_set(e, "%s: writing the type %s is not supported", path, quant_info(o->type)->name);
    if (!gguf_check_vocabulary(c, o, path, e)) return false;
    if (!gguf_check_config(c, path, e)) return false;
    const GgufParts p = gguf_parts(c, gguf_architecture_of(c->family)->fused);
    GgufOut out = *o;
    if (out.tokenizer && !out.tokenizer->count) out.tokenizer = NULL;
    gguf_create(&w);
    gguf_put_head(&w, c, &out);
    gguf_plan_rope(&w, c);
    gguf_plan_parts(&w, &p, o->type);
    const bool ok = gguf_write(&w, c, &p, path, get, context, e);
    gguf_abort(&w);
    free(p.part);
    return ok;
}

#endif
