/* huggingface_config_write.h - writer of a model's configuration as Hugging Face's folders hold it: config.json.
 *
 * huggingface_config_write() makes a config.json with the keys of transformers 4, which transformers 4 and 5, vLLM and
 * the converter of llama.cpp read. huggingface_config_change() replaces single values in the text of an existing
 * config.json and leaves all its other bytes as they are.
 *
 *     TextBuffer b = {0};
 *     TokenList stops = {0};                                        // the tokens that end a completion
 *     huggingface_config_write(&b, &config, "float32", &stops);
 *     huggingface_config_change(&b, "vocab_size", "151936");
 *     text_free(&b);
 */
#ifndef LLMC_MODEL_HUGGINGFACE_CONFIG_WRITE_H
#define LLMC_MODEL_HUGGINGFACE_CONFIG_WRITE_H

#include "../base/error.h"      /* Error, error_set */
#include "../base/text.h"       /* text_format, text_string, TextBuffer, text_append, ... */
#include "backend.h"            /* MLP_GELU, NORM_LAYER */
#include "config.h"             /* ModelConfig, FAMILY_GEMMA3, FAMILY_GPT2, FAMILY_PHI3, ... */
#include "huggingface_config.h" /* huggingface_family, huggingface_ids_text */

/* ---- numbers and keys -------------------------------------------------------------------------------------------- */

/* The shortest decimal number that is the same float32, with a point or an exponent. */
static inline void huggingface_put_float(TextBuffer *b, float x) {
    char text[64];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    text_format(b, "%s%s", text, strpbrk(text, ".e") ? "" : ".0");
}

static inline void huggingface_put_floats(TextBuffer *b, const char *key, const float *x, int32_t n) {
    text_format(b, ", \"%s\": [", key);
    for (int32_t i = 0; i < n; i++) {
        text_string(b, i ? ", " : "");
        huggingface_put_float(b, x[i]);
    }
    text_string(b, "]");
}

static inline void huggingface_put_key(TextBuffer *b, const char *key, float x) {
    text_format(b, ", \"%s\": ", key);
    huggingface_put_float(b, x);
}

static inline void huggingface_put_rope(TextBuffer *b, const Rope *r) {
    static const char *const words[] = {
        [ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3", [ROPE_YARN] = "yarn", [ROPE_LONGROPE] = "longrope"};
    if (r->kind == ROPE_DEFAULT) {
        text_string(b, "null");
        return;
    }
    text_format(b, "{\"rope_type\": \"%s\", \"type\": \"%s\"", words[r->kind], words[r->kind]);
    huggingface_put_key(b, "factor", r->factor);
    if (r->kind == ROPE_LLAMA3) {
        huggingface_put_key(b, "low_freq_factor", r->low);
        huggingface_put_key(b, "high_freq_factor", r->high);
    }
    if (r->kind == ROPE_YARN) {
        huggingface_put_key(b, "beta_fast", r->beta_fast);
        huggingface_put_key(b, "beta_slow", r->beta_slow);
        if (r->exact) text_string(b, ", \"truncate\": false");
    }
    if (r->attention) huggingface_put_key(b, "attention_factor", r->attention);
    if (r->original) text_format(b, ", \"original_max_position_embeddings\": %d", r->original);
    if (r->kind == ROPE_LONGROPE) {
        huggingface_put_floats(b, "short_factor", r->short_list, r->list_count);
        huggingface_put_floats(b, "long_factor", r->long_list, r->list_count);
    }
    text_string(b, "}");
}

static inline void huggingface_put_flag(TextBuffer *b, const char *key, bool flag) {
    text_format(b, ",\n  \"%s\": %s", key, flag ? "true" : "false");
}

static inline void huggingface_put_value(TextBuffer *b, const char *key, float x) {
    text_format(b, ",\n  \"%s\": ", key);
    if (x) huggingface_put_float(b, x);
    else text_string(b, "null");
}

static inline void huggingface_put_layer_types(TextBuffer *b, const ModelConfig *c) {
    text_string(b, ",\n  \"layer_types\": [");
    for (int l = 0; l < c->layers; l++)
        text_format(b, "%s\"%s\"", l ? ", " : "", c->layer[l] & LAYER_WINDOW ? "sliding_attention" : "full_attention");
    text_string(b, "]");
}

/* The keys of rotary positions, layers and windows. */
static inline void huggingface_write_positions(TextBuffer *b, const ModelConfig *c) {
    const Family f = c->family;
    const bool gemma = f == FAMILY_GEMMA2 || f == FAMILY_GEMMA3;
    huggingface_put_value(b, "rope_theta", c->rope.theta);
    text_string(b, ",\n  \"rope_scaling\": ");
    huggingface_put_rope(b, &c->rope);
    if (f == FAMILY_GEMMA3) huggingface_put_value(b, "rope_local_base_freq", c->local_rope.theta);
    if (f == FAMILY_PHI3) {
        if (c->rope.original) text_format(b, ",\n  \"original_max_position_embeddings\": %d", c->rope.original);
        huggingface_put_value(b, "partial_rotary_factor", (float)c->rotary / (float)c->head_size);
    }
    if (f == FAMILY_SMOLLM3) {
        text_string(b, ",\n  \"no_rope_layers\": [");
        for (int l = 0; l < c->layers; l++) text_format(b, "%s%d", l ? ", " : "", !(c->layer[l] & LAYER_NO_ROPE));
        text_string(b, "]");
    }
    if (f == FAMILY_LLAMA || f == FAMILY_OLMO2) return;
    if (f == FAMILY_QWEN2 || f == FAMILY_QWEN3 || f == FAMILY_SMOLLM3)
        huggingface_put_flag(b, "use_sliding_window", c->window != 0);
    if (c->window) text_format(b, ",\n  \"sliding_window\": %d", c->window);
    else text_string(b, ",\n  \"sliding_window\": null");
    if (gemma || (c->window && f != FAMILY_MISTRAL && f != FAMILY_PHI3)) huggingface_put_layer_types(b, c);
}

/* query_pre_attn_scalar, which is an integer in all published files. */
static inline void huggingface_put_scalar(TextBuffer *b, const ModelConfig *c) {
    const float scale = c->score_scale ? c->score_scale : 1 / sqrtf((float)c->head_size);
    const double scalar = 1 / ((double)scale * (double)scale), whole = round(scalar);
    if (scale == (float)(1 / sqrt(whole))) text_format(b, ",\n  \"query_pre_attn_scalar\": %.0f", whole);
    else huggingface_put_value(b, "query_pre_attn_scalar", (float)scalar);
}

static inline void huggingface_write_rotary(TextBuffer *b, const ModelConfig *c) {
    const Family f = c->family;
    const bool gemma = f == FAMILY_GEMMA2 || f == FAMILY_GEMMA3;
    const struct {
        const char *key;
        int32_t value;
    } size[] = {{"hidden_size", c->width},
                {"intermediate_size", c->hidden},
                {"num_hidden_layers", c->layers},
                {"num_attention_heads", c->heads},
                {"num_key_value_heads", c->kv_heads},
                {"head_dim", c->head_size},
                {"max_position_embeddings", c->context}};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        text_format(b, ",\n  \"%s\": %d", size[i].key, size[i].value);
    huggingface_put_value(b, "rms_norm_eps", c->norm_eps);
    text_format(b, ",\n  \"%s\": \"%s\"", gemma ? "hidden_activation" : "hidden_act",
                gemma ? "gelu_pytorch_tanh" : "silu");
    if (f != FAMILY_MISTRAL && f != FAMILY_QWEN2 && f != FAMILY_PHI3)
        huggingface_put_flag(b, "attention_bias", c->qkv_bias);
    if (f == FAMILY_LLAMA || f == FAMILY_SMOLLM3) huggingface_put_flag(b, "mlp_bias", c->mlp_bias);
    if (gemma) {
        huggingface_put_scalar(b, c);
        huggingface_put_value(b, "attn_logit_softcapping", c->score_cap);
        huggingface_put_value(b, "final_logit_softcapping", c->logit_cap);
    }
    huggingface_write_positions(b, c);
}

static inline void huggingface_write_gpt2(TextBuffer *b, const ModelConfig *c) {
    text_format(b, ",\n  \"n_embd\": %d,\n  \"n_layer\": %d,\n  \"n_head\": %d,\n  \"n_positions\": %d", c->width,
                c->layers, c->heads, c->context);
    if (c->hidden != 4 * c->width) text_format(b, ",\n  \"n_inner\": %d", c->hidden);
    text_string(b, ",\n  \"activation_function\": \"gelu_new\"");
    huggingface_put_value(b, "layer_norm_epsilon", c->norm_eps);
    text_string(b, ",\n  \"attn_pdrop\": 0.0,\n  \"embd_pdrop\": 0.0,\n  \"resid_pdrop\": 0.0");
}

static inline void huggingface_architecture_name(const ModelConfig *c, char name[64]) {
    const char *stem = huggingface_family[c->family].stem;
    if (c->value_head)
        snprintf(name, 64, "%s%sForSequenceClassification", stem, c->family == FAMILY_GEMMA3 ? "Text" : "");
    else snprintf(name, 64, "%s%s", stem, c->family == FAMILY_GPT2 ? "LMHeadModel" : "ForCausalLM");
}

/* Checks that config.json of c's family can describe this model. */
static inline bool huggingface_can_describe(const ModelConfig *c, const char *what, Error *e) {
    if (c->family == FAMILY_GPT2 &&
        (c->norm != NORM_LAYER || c->mlp != MLP_GELU || c->position != POSITION_LEARNED || c->kv_heads != c->heads ||
         c->head_size * c->heads != c->width || !c->qkv_bias || !c->attproj_bias || !c->mlp_bias || c->window))
        return error_set(e, "%s: config.json cannot describe this variant of GPT-2", what);
    return true;
}

/* Appends the text of a config.json for this model. dtype: "float32", "bfloat16" or "float16". stops: the tokens that
 * end a completion; may be empty. The text read again gives an equal ModelConfig. */
static inline void huggingface_config_write(TextBuffer *b, const ModelConfig *c, const char *dtype,
                                            const TokenList *stops) {
    char architecture[64];
    huggingface_architecture_name(c, architecture);
    text_format(b, "{\n  \"architectures\": [\n    \"%s\"\n  ],\n  \"model_type\": \"%s\",\n  \"vocab_size\": %d",
                architecture, huggingface_family[c->family].type, c->vocab);
    if (c->family == FAMILY_GPT2) huggingface_write_gpt2(b, c);
    else huggingface_write_rotary(b, c);
    huggingface_put_flag(b, "tie_word_embeddings", c->tied);
    if (c->value_head) text_string(b, ",\n  \"num_labels\": 1");
    /* the classes' defaults can be outside a small vocabulary */
    text_string(b, ",\n  \"bos_token_id\": null,\n  \"pad_token_id\": null,\n  \"eos_token_id\": ");
    if (stops->count) huggingface_ids_text(b, stops);
    else text_string(b, "null");
    text_format(b, ",\n  \"torch_dtype\": \"%s\"\n}\n", dtype);
}

/* ---- changes of a text -------------------------------------------------------------------------------------------- */

/* Returns the end of the JSON value that begins at s, in a text that is valid JSON. */
static inline const char *huggingface_skip_value(const char *s) {
    int depth = 0;
    bool quoted = false;
    for (; *s; s++) {
        if (quoted) {
            if (*s == '\\' && s[1]) s++;
            else if (*s == '"') quoted = false;
        } else if (*s == '"') quoted = true;
        else if (*s == '{' || *s == '[') depth++;
        else if (depth ? (*s == '}' || *s == ']') : (*s == '}' || *s == ',' || strchr(" \t\r\n", *s) != NULL)) {
            if (!depth) return s;
            if (!--depth) return s + 1;
        }
    }
    return s;
}

static inline const char *huggingface_skip_space(const char *s) { return s + strspn(s, " \t\r\n"); }

/* Replaces the value of a key at the top level of a JSON object, or adds the key as the first one. All other bytes
 * stay. text: valid JSON without duplicate keys, and an object. value: JSON text. Keys with escapes are not found. */
static inline void huggingface_config_change(TextBuffer *text, const char *key, const char *value) {
    const char *begin = strchr(text->text, '{') + 1, *s = huggingface_skip_space(begin);
    const bool empty = *s == '}';
    const size_t n = strlen(key);
    TextBuffer out = {0};
    while (*s == '"') {
        const char *name = s + 1, *after = name;
        while (*after != '"') after += *after == '\\' ? 2 : 1;
        const char *from = huggingface_skip_space(huggingface_skip_space(after + 1) + 1),
                   *to = huggingface_skip_value(from);
        if ((size_t)(after - name) == n && !memcmp(name, key, n)) {
            text_append(&out, text->text, (size_t)(from - text->text));
            text_string(&out, value);
            text_append(&out, to, text->length - (size_t)(to - text->text));
            break;
        }
        s = huggingface_skip_space(to);
        if (*s != ',') break;
        s = huggingface_skip_space(s + 1);
    }
    if (!out.length) {
        text_append(&out, text->text, (size_t)(begin - text->text));
        text_format(&out, "\n  \"%s\": %s%s", key, value, empty ? "\n" : ",");
        text_append(&out, begin, text->length - (size_t)(begin - text->text));
    }
    text_free(text);
    *text = out;
}

#endif
