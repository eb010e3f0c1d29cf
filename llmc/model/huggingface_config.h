/* huggingface_config.h - reader of a model's configuration as Hugging Face's folders hold it: config.json.
 *
 * huggingface_config_read() turns the JSON of config.json into a ModelConfig. The defaults of absent keys are those of
 * the configuration class of each `model_type` in transformers 5 (models/TYPE/configuration_TYPE.py), and both
 * generations of the keys of rotary positions are read:
 *
 *   transformers 5   rope_parameters {rope_type, rope_theta, factor, ...}; in Gemma 3 one such object for each of
 *                    full_attention and sliding_attention; dtype
 *   transformers 4   rope_theta, rope_scaling {rope_type or type, factor, ...} or null; rope_local_base_freq (Gemma 3);
 *                    torch_dtype
 *
 * Precedence: the object, then the key of the top level, then the default of the class.
 *
 * There are four kinds of keys, of which three have a table below: keys that are read (huggingface_keys); keys that
 * change the model and are accepted with the value that changes nothing (huggingface_neutral); keys that do not change
 * what a model computes (huggingface_harmless), which are only passed on to an output. Every other key is refused by
 * name unless it is null or false, because it may change the model. Probabilities of dropout are accepted and not
 * applied.
 *
 * The architectures may be those of a language model (...ForCausalLM, GPT2LMHeadModel), of its body (...Model), and of
 * a sequence classifier with one label, which is a reward model (...ForSequenceClassification).
 *
 *     ModelConfig c;
 *     json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
 *     if (!huggingface_config_read(&c, root, "qwen/config.json", e)) return false;
 */
#ifndef LLMC_MODEL_HUGGINGFACE_CONFIG_H
#define LLMC_MODEL_HUGGINGFACE_CONFIG_H

#include "../base/error.h" /* error_set, Error */
#include "../base/text.h"  /* TokenList, text_string, TextBuffer, text_format, ... */
#include "backend.h"       /* MLP_GEGLU, MLP_SWIGLU, NORM_RMS */
#include "config.h"        /* ModelConfig, FAMILY_PHI3, FAMILY_GEMMA3, FAMILY_OLMO2, ... */
#include <jansson.h>
#include <math.h>

/* ---- families ---------------------------------------------------------------------------------------------------- */

typedef struct HuggingfaceFamily {
    const char *type; /* model_type */
    const char *stem; /* of the names of its architectures */
    double theta;     /* default base of rotary positions */
    double norm_eps;
    bool tied; /* default of tie_word_embeddings */
} HuggingfaceFamily;

// clang-format off
static const HuggingfaceFamily huggingface_family[FAMILY_COUNT] = {
    [FAMILY_GPT2]    = {"gpt2",        "GPT2",    0,   1e-5, true},
    [FAMILY_LLAMA]   = {"llama",       "Llama",   1e4, 1e-6, false},
    [FAMILY_MISTRAL] = {"mistral",     "Mistral", 1e4, 1e-6, false},
    [FAMILY_QWEN2]   = {"qwen2",       "Qwen2",   1e4, 1e-6, false},
    [FAMILY_QWEN3]   = {"qwen3",       "Qwen3",   1e4, 1e-6, false},
    [FAMILY_SMOLLM3] = {"smollm3",     "SmolLM3", 2e6, 1e-6, true},
    [FAMILY_OLMO2]   = {"olmo2",       "Olmo2",   1e4, 1e-5, false},
    [FAMILY_PHI3]    = {"phi3",        "Phi3",    1e4, 1e-5, false},
    [FAMILY_GEMMA2]  = {"gemma2",      "Gemma2",  1e4, 1e-6, true},
    [FAMILY_GEMMA3]  = {"gemma3_text", "Gemma3",  1e6, 1e-6, true}};

#define HUGGINGFACE_COVERED "gpt2, llama, mistral, qwen2, qwen3, smollm3, olmo2, phi3, gemma2 and gemma3_text"

/* ---- keys -------------------------------------------------------------------------------------------------------- */

#define F(family) (1u << FAMILY_##family)
enum {
    HUGGINGFACE_GPT2   = F(GPT2),
    HUGGINGFACE_GEMMA  = F(GEMMA2) | F(GEMMA3),
    HUGGINGFACE_ROTARY = (1u << FAMILY_COUNT) - 1 - F(GPT2),
    HUGGINGFACE_ALL    = (1u << FAMILY_COUNT) - 1
};

typedef struct HuggingfaceKey {
    const char *name;
    unsigned families;
} HuggingfaceKey;

static const HuggingfaceKey huggingface_keys[] = { /* read */
    {"model_type",                      HUGGINGFACE_ALL},
    {"architectures",                   HUGGINGFACE_ALL},
    {"vocab_size",                      HUGGINGFACE_ALL},
    {"tie_word_embeddings",             HUGGINGFACE_ALL},
    {"num_labels",                      HUGGINGFACE_ALL},
    {"id2label",                        HUGGINGFACE_ALL},
    {"bos_token_id",                    HUGGINGFACE_ALL},
    {"eos_token_id",                    HUGGINGFACE_ALL},
    {"pad_token_id",                    HUGGINGFACE_ALL},
    {"n_embd",                          HUGGINGFACE_GPT2},
    {"n_head",                          HUGGINGFACE_GPT2},
    {"n_layer",                         HUGGINGFACE_GPT2},
    {"n_positions",                     HUGGINGFACE_GPT2},
    {"n_inner",                         HUGGINGFACE_GPT2},
    {"activation_function",             HUGGINGFACE_GPT2},
    {"layer_norm_epsilon",              HUGGINGFACE_GPT2},
    {"hidden_size",                     HUGGINGFACE_ROTARY},
    {"intermediate_size",               HUGGINGFACE_ROTARY},
    {"num_hidden_layers",               HUGGINGFACE_ROTARY},
    {"num_attention_heads",             HUGGINGFACE_ROTARY},
    {"num_key_value_heads",             HUGGINGFACE_ROTARY},
    {"head_dim",                        HUGGINGFACE_ROTARY},
    {"max_position_embeddings",         HUGGINGFACE_ROTARY},
    {"rms_norm_eps",                    HUGGINGFACE_ROTARY},
    {"rope_parameters",                 HUGGINGFACE_ROTARY},
    {"rope_scaling",                    HUGGINGFACE_ROTARY},
    {"rope_theta",                      HUGGINGFACE_ROTARY},
    {"original_max_position_embeddings",HUGGINGFACE_ROTARY},
    {"partial_rotary_factor",           HUGGINGFACE_ROTARY},
    {"layer_types",                     HUGGINGFACE_ROTARY},
    {"rope_local_base_freq",            F(GEMMA3)},
    {"hidden_act",                      HUGGINGFACE_ROTARY & ~HUGGINGFACE_GEMMA},
    {"hidden_activation",               HUGGINGFACE_GEMMA},
    {"attention_bias",                  HUGGINGFACE_ROTARY & ~(F(MISTRAL) | F(QWEN2) | F(PHI3))},
    {"mlp_bias",                        F(LLAMA) | F(SMOLLM3)},
    {"sliding_window",                  F(MISTRAL) | F(QWEN2) | F(QWEN3) | F(SMOLLM3) | F(PHI3) | HUGGINGFACE_GEMMA},
    {"use_sliding_window",              F(QWEN2) | F(QWEN3) | F(SMOLLM3)},
    {"max_window_layers",               F(QWEN2) | F(QWEN3)},
    {"no_rope_layers",                  F(SMOLLM3)},
    {"no_rope_layer_interval",          F(SMOLLM3)},
    {"query_pre_attn_scalar",           HUGGINGFACE_GEMMA},
    {"attn_logit_softcapping",          HUGGINGFACE_GEMMA}, /* transformers applies it in gemma2 only */
    {"final_logit_softcapping",         HUGGINGFACE_GEMMA},
    {"sliding_window_pattern",          F(GEMMA3)},
    {"_sliding_window_pattern",         F(GEMMA3)}};

/* Accepted only with this number (true is 1, false is 0) or null. */
static const struct { const char *name; double value; unsigned families; } huggingface_neutral[] = {
    {"add_cross_attention",             0, HUGGINGFACE_ALL},
    {"is_encoder_decoder",              0, HUGGINGFACE_ALL},
    {"is_causal",                       1, HUGGINGFACE_ALL},
    {"use_bidirectional_attention",     0, HUGGINGFACE_ALL},
    {"rope_interleaved",                0, HUGGINGFACE_ALL},
    {"embedding_multiplier",            1, HUGGINGFACE_ALL},
    {"residual_multiplier",             1, HUGGINGFACE_ALL},
    {"logits_scaling",                  1, HUGGINGFACE_ALL},
    {"scale_attn_weights",              1, HUGGINGFACE_GPT2},
    {"scale_attn_by_inverse_layer_idx", 0, HUGGINGFACE_GPT2}};

/* Do not change what the model computes, in any family. A name that ends with * is the beginning of names. */
static const char *const huggingface_harmless[] = {
    /* origin of the file */
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "transformers.js_config", "auto_map", "model_name",
    "unsloth*", "_unsloth*", "tokenizer_class", "license", "finetuning_task", "task_specific_params", "is_llama_config",
    /* how it is stored and run */
    "dtype", "torch_dtype", "use_cache", "cache_implementation", "_attn_implementation*", "attn_implementation", "_flash_attn*",
    "pretraining_tp", "tp_plan", "gradient_checkpointing", "torchscript", "use_bfloat16", "return_dict", "output_attentions",
    "output_hidden_states", "chunk_size_feed_forward", "reorder_and_upcast_attn", "per_layer_config", "tie_last_hidden_states",
    "_from_model_config", "vocab_size_multiple", "n_ctx", "model_max_length", "tie_encoder_decoder", "cross_attention_hidden_size",
    /* training and initial values */
    "initializer_range", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "classifier_dropout",
    /* heads of classifiers; the biases and norms that a file has are those of its tensors, which are checked */
    "summary_*", "label2id", "problem_type", "sep_token_id", "cls_token_id", "decoder_start_token_id", "attention_bias", "mlp_bias",
    /* read by no code of these families */
    "hidden_act", "hidden_activation", "is_decoder", "max_window_layers", "use_qk_norm", "head_type",
    /* defaults of sampling, which older files have here */
    "do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "num_beams", "num_beam_groups", "diversity_penalty",
    "min_length", "max_length", "early_stopping", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "return_dict_in_generate", "output_scores", "prefix",
    "pruned_heads", "tf_legacy_loss", "predict_special_tokens"};
// clang-format on
#undef F

static inline bool huggingface_is_harmless(const char *key) {
    for (size_t i = 0; i < sizeof huggingface_harmless / sizeof *huggingface_harmless; i++) {
        const char *name = huggingface_harmless[i];
        const size_t n = strlen(name);
        if (name[n - 1] == '*' ? !strncmp(key, name, n - 1) : !strcmp(key, name)) return true;
    }
    return false;
}

/* Checks one key of the top level. */
static inline bool huggingface_check_key(const char *key, const json_t *value, Family family, const char *name,
                                         Error *e) {
    const unsigned bit = 1u << family;
    for (size_t i = 0; i < sizeof huggingface_keys / sizeof *huggingface_keys; i++)
        if (!strcmp(key, huggingface_keys[i].name) && huggingface_keys[i].families & bit) return true;
    if (json_is_null(value)) return true;
    for (size_t i = 0; i < sizeof huggingface_neutral / sizeof *huggingface_neutral; i++) {
        if (strcmp(key, huggingface_neutral[i].name) || !(huggingface_neutral[i].families & bit)) continue;
        const double wanted = huggingface_neutral[i].value;
        if (json_is_boolean(value) ? json_is_true(value) == (wanted == 1)
                                   : json_is_number(value) && json_number_value(value) == wanted)
            return true;
        return error_set(e, "%s: %s has a value other than %g, which is not covered", name, key, wanted);
    }
    if (huggingface_is_harmless(key) || json_is_false(value)) return true;
    if (!strcmp(key, "quantization_config"))
        return error_set(e, "%s: quantization_config: quantised weights are not covered; use the original model", name);
    return error_set(
        e,
        "%s: key \"%.*s\" is not known for model_type %s and may change the model; remove it if it does not. "
        "Covered are the plain decoders " HUGGINGFACE_COVERED,
        name, strlen(key) > 100 ? 100 : (int)strlen(key), key, huggingface_family[family].type);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

/* The value of a key; NULL if it is absent or null. */
static inline const json_t *huggingface_value(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

/* An integer key. fallback: the value if it is absent or null; INT64_MIN: it is required. */
static inline bool huggingface_integer(const json_t *object, const char *key, int64_t fallback, int32_t *to,
                                       const char *name, Error *e) {
    const json_t *value = huggingface_value(object, key);
    int64_t x = fallback;
    *to = 0;
    if (!value && fallback == INT64_MIN) return error_set(e, "%s: has no %s", name, key);
    if (json_is_real(value) && json_real_value(value) == floor(json_real_value(value)) &&
        fabs(json_real_value(value)) < 1e9)
        x = (int64_t)json_real_value(value);
    else if (value && !json_is_integer(value)) return error_set(e, "%s: %s is not an integer", name, key);
    else if (value) x = json_integer_value(value);
    if (x < INT32_MIN || x > INT32_MAX) return error_set(e, "%s: %s is %lld", name, key, (long long)x);
    *to = (int32_t)x;
    return true;
}

/* A key with a positive number that float32 can have. fallback: the value if it is absent or null; NAN: it is required. */
static inline bool huggingface_number(const json_t *object, const char *key, double fallback, double *to,
                                      const char *name, Error *e) {
    const json_t *value = huggingface_value(object, key);
    *to = fallback;
    if (!value && isnan(fallback)) return error_set(e, "%s: has no %s", name, key);
    if (value && !json_is_number(value)) return error_set(e, "%s: %s is not a number", name, key);
    if (value) *to = json_number_value(value);
    if (value && !(*to >= 1e-30 && *to <= 1e30))
        return error_set(e, "%s: %s is %g, expected a number from 1e-30 to 1e30", name, key, *to);
    return true;
}

static inline bool huggingface_float(const json_t *object, const char *key, double fallback, float *to,
                                     const char *name, Error *e) {
    double x;
    if (!huggingface_number(object, key, fallback, &x, name, e)) return false;
    *to = (float)x;
    return true;
}

static inline bool huggingface_flag(const json_t *object, const char *key, bool fallback, int32_t *to, const char *name,
                                    Error *e) {
    const json_t *value = huggingface_value(object, key);
    *to = value ? json_is_true(value) : fallback;
    if (value && !json_is_boolean(value)) return error_set(e, "%s: %s is not true or false", name, key);
    return true;
}

/* ---- rotary positions -------------------------------------------------------------------------------------------- */

/* Reads short_factor or long_factor. */
static inline bool huggingface_rope_list(const json_t *object, const char *key, int32_t count, float *to,
                                         const char *name, Error *e) {
    const json_t *list = huggingface_value(object, key);
    if (!json_is_array(list) || json_array_size(list) != (size_t)count || count > ROPE_LIST_MAX)
        return error_set(e, "%s: %s is not a list of %d numbers, half of the rotated channels", name, key, count);
    for (int32_t i = 0; i < count; i++) {
        const double x = json_number_value(json_array_get(list, (size_t)i));
        if (!(x > 0 && x < 1e30)) return error_set(e, "%s: number %d of %s is not positive", name, i, key);
        to[i] = (float)x;
    }
    return true;
}

/* The kind of the object's rope_type. */
static inline bool huggingface_rope_kind(const json_t *object, Family family, RopeKind *kind, const char *name,
                                         Error *e) {
    static const char *const words[] = {[ROPE_DEFAULT] = "default",
                                        [ROPE_LINEAR] = "linear",
                                        [ROPE_LLAMA3] = "llama3",
                                        [ROPE_YARN] = "yarn",
                                        [ROPE_LONGROPE] = "longrope"};
    const json_t *value = huggingface_value(object, "rope_type");
    if (!value) value = huggingface_value(object, "type");
    const char *word = value ? json_string_value(value) : "default";
    if (!word) return error_set(e, "%s: rope_type is not a text", name);
    if (family == FAMILY_PHI3 && (!strcmp(word, "su") || !strcmp(word, "yarn")))
        word = "longrope"; /* older spellings */
    for (int i = ROPE_DEFAULT; i <= ROPE_LONGROPE; i++)
        if (!strcmp(word, words[i])) {
            *kind = (RopeKind)i;
            return family != FAMILY_PHI3 || i == ROPE_DEFAULT || i == ROPE_LONGROPE ||
                   error_set(e, "%s: rope_type %s is not covered for phi3, expected default or longrope", name, word);
        }
    return error_set(e, "%s: rope_type \"%.100s\" is not covered, expected default, linear, llama3, yarn or longrope",
                     name, word);
}

static inline bool huggingface_rope_check_keys(const json_t *object, const char *name, Error *e) {
    static const char *const known[] = {"rope_type",
                                        "type",
                                        "rope_theta",
                                        "factor",
                                        "low_freq_factor",
                                        "high_freq_factor",
                                        "beta_fast",
                                        "beta_slow",
                                        "attention_factor",
                                        "mscale",
                                        "mscale_all_dim",
                                        "truncate",
                                        "short_factor",
                                        "long_factor",
                                        "partial_rotary_factor",
                                        "finetuned",
                                        "original_max_position_embeddings"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        bool found = json_is_null(value);
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) found |= !strcmp(key, known[i]);
        if (!found)
            return error_set(e, "%s: key \"%.100s\" of the rotary positions is not known and may change them", name,
                             key);
    }
    return true;
}

/* yarn: the factor of cosines and sines; 0: the default, which rotary.h derives from `factor`. */
static inline bool huggingface_yarn_attention(const json_t *object, double factor, float *to, const char *name,
                                              Error *e) {
    double given, a, b;
    if (!huggingface_number(object, "attention_factor", 0, &given, name, e) ||
        !huggingface_number(object, "mscale", 0, &a, name, e) ||
        !huggingface_number(object, "mscale_all_dim", 0, &b, name, e))
        return false;
    *to = (float)given;
    if (!given && a && b && factor > 1) *to = (float)((0.1 * a * log(factor) + 1) / (0.1 * b * log(factor) + 1));
    return true;
}

/* Reads one object of rotary positions; object: may be NULL. root: config.json. theta: the base if the object has
 * none. */
static inline bool huggingface_rope(Rope *r, const json_t *object, const json_t *root, const ModelConfig *c,
                                    double theta, const char *name, Error *e) {
    *r = (Rope){0};
    int32_t inner, truncate;
    double factor;
    if (object && !huggingface_rope_check_keys(object, name, e)) return false;
    if (!huggingface_rope_kind(object, c->family, &r->kind, name, e) ||
        !huggingface_float(object, "rope_theta", theta, &r->theta, name, e))
        return false;
    if (r->kind == ROPE_DEFAULT) return true;
    const int32_t base = c->family == FAMILY_PHI3 ? 4096 : 0;
    if (!huggingface_integer(root, "original_max_position_embeddings", base, &r->original, name, e) ||
        !huggingface_integer(object, "original_max_position_embeddings", r->original, &inner, name, e))
        return false;
    if (r->original && inner != r->original)
        return error_set(e,
                         "%s: original_max_position_embeddings is %d at the top level and %d with the rotary positions",
                         name, r->original, inner);
    r->original = r->kind == ROPE_LINEAR ? 0 : inner ? inner : c->context;
    if (r->kind != ROPE_LINEAR && r->original < 2)
        return error_set(e, "%s: original_max_position_embeddings is %d", name, r->original);
    const double ratio = r->original ? (double)c->context / r->original : 1;
    const bool derived = r->kind == ROPE_YARN || r->kind == ROPE_LONGROPE;
    if (!huggingface_number(object, "factor", derived ? ratio : NAN, &factor, name, e)) return false;
    r->factor = (float)factor;
    switch (r->kind) {
    case ROPE_LLAMA3:
        if (!huggingface_float(object, "low_freq_factor", NAN, &r->low, name, e) ||
            !huggingface_float(object, "high_freq_factor", NAN, &r->high, name, e))
            return false;
        return r->low < r->high || error_set(e, "%s: low_freq_factor is %g, expected less than high_freq_factor, %g",
                                             name, (double)r->low, (double)r->high);
    case ROPE_YARN:
        if (!huggingface_flag(object, "truncate", true, &truncate, name, e)) return false;
        r->exact = !truncate;
        return huggingface_float(object, "beta_fast", 32, &r->beta_fast, name, e) &&
               huggingface_float(object, "beta_slow", 1, &r->beta_slow, name, e) &&
               huggingface_yarn_attention(object, factor, &r->attention, name, e);
    case ROPE_LONGROPE:
        r->list_count = c->rotary / 2;
        return huggingface_float(object, "attention_factor", 0, &r->attention, name, e) &&
               huggingface_rope_list(object, "short_factor", r->list_count, r->short_list, name, e) &&
               huggingface_rope_list(object, "long_factor", r->list_count, r->long_list, name, e);
    default: return true;
    }
}

/* The object with the rotary positions, or NULL. */
static inline bool huggingface_rope_object(const json_t *root, const json_t **object, const char *name, Error *e) {
    const json_t *newer = huggingface_value(root, "rope_parameters"), *older = huggingface_value(root, "rope_scaling");
    *object = newer ? newer : older;
    if (newer && older && !json_equal(newer, older))
        return error_set(e, "%s: rope_parameters and rope_scaling differ, expected one of them", name);
    return !*object || json_is_object(*object) || error_set(e, "%s: the rotary positions are not a JSON object", name);
}

/* The rotated channels, from partial_rotary_factor. */
static inline bool huggingface_rotary(ModelConfig *c, const json_t *root, const json_t *object, const char *name,
                                      Error *e) {
    double outer, part;
    if (!huggingface_number(root, "partial_rotary_factor", 1, &outer, name, e) ||
        !huggingface_number(object, "partial_rotary_factor", outer, &part, name, e))
        return false;
    c->rotary = c->head_size;
    if (part == 1) return true;
    if (c->family != FAMILY_PHI3 || part > 1)
        return error_set(e, "%s: partial_rotary_factor is %g, which is not covered for %s", name, part,
                         huggingface_family[c->family].type);
    c->rotary = (int32_t)(c->head_size * part);
    return true;
}

static inline bool huggingface_positions(ModelConfig *c, const json_t *root, const char *name, Error *e) {
    const json_t *object = NULL, *local = NULL;
    double theta = huggingface_family[c->family].theta, local_theta;
    c->position = POSITION_ROTARY;
    if (!huggingface_rope_object(root, &object, name, e)) return false;
    if (c->family == FAMILY_GEMMA3) {
        const json_t *nested = huggingface_value(root, "rope_parameters");
        if (nested && huggingface_value(root, "rope_scaling"))
            return error_set(e, "%s: has both rope_parameters and rope_scaling, expected one of them", name);
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)nested, key, value) {
            if ((!strcmp(key, "full_attention") || !strcmp(key, "sliding_attention")) && json_is_object(value))
                continue;
            return error_set(e,
                             "%s: rope_parameters: \"%.100s\" is not an object for full_attention or sliding_attention",
                             name, key);
        }
        if (nested) object = json_object_get(nested, "full_attention");
        local = json_object_get(nested, "sliding_attention");
    }
    if (!huggingface_rotary(c, root, object, name, e) ||
        !huggingface_number(root, "rope_theta", theta, &theta, name, e) ||
        !huggingface_rope(&c->rope, object, root, c, theta, name, e))
        return false;
    if (c->family != FAMILY_GEMMA3) return true;
    return huggingface_number(root, "rope_local_base_freq", 1e4, &local_theta, name, e) &&
           huggingface_rope(&c->local_rope, local, root, c, local_theta, name, e);
}

/* ---- layers ------------------------------------------------------------------------------------------------------ */

/* Whether layer l has a window by the family's pattern. period: of Gemma 3's pattern; from: Qwen's first layer. */
static inline bool huggingface_window_by_pattern(const ModelConfig *c, int l, int period, int from) {
    switch (c->family) {
    case FAMILY_MISTRAL:
    case FAMILY_PHI3: return true;
    case FAMILY_QWEN2:
    case FAMILY_QWEN3: return l >= from;
    case FAMILY_SMOLLM3: return c->layer[l] & LAYER_NO_ROPE;
    case FAMILY_GEMMA2: return (l + 1) % 2;
    case FAMILY_GEMMA3: return (l + 1) % period;
    default: return false;
    }
}

/* SmolLM3: the layers without rotary positions. */
static inline bool huggingface_no_rope(ModelConfig *c, const json_t *root, const char *name, Error *e) {
    const json_t *list = huggingface_value(root, "no_rope_layers");
    int32_t interval;
    if (!huggingface_integer(root, "no_rope_layer_interval", 4, &interval, name, e)) return false;
    if (!list && interval < 1) return error_set(e, "%s: no_rope_layer_interval is %d", name, interval);
    if (list && (!json_is_array(list) || json_array_size(list) != (size_t)c->layers))
        return error_set(e, "%s: no_rope_layers is not a list of %d numbers", name, c->layers);
    for (int l = 0; l < c->layers; l++) {
        const json_t *value = list ? json_array_get(list, (size_t)l) : NULL;
        const json_int_t x = list ? json_integer_value(value) : (l + 1) % interval != 0;
        if ((list && !json_is_integer(value)) || (x != 0 && x != 1))
            return error_set(e, "%s: number %d of no_rope_layers is not 0 or 1", name, l);
        if (!x) c->layer[l] |= LAYER_NO_ROPE;
    }
    return true;
}

/* Replaces the pattern by layer_types, if the file has them. Families whose code does not read layer_types must agree
 * with their pattern. */
static inline bool huggingface_layer_types(ModelConfig *c, const json_t *root, bool windows, const char *name,
                                           Error *e) {
    const json_t *list = huggingface_value(root, "layer_types");
    const unsigned fixed = 1u << FAMILY_LLAMA | 1u << FAMILY_MISTRAL | 1u << FAMILY_OLMO2 | 1u << FAMILY_PHI3;
    if (!list) return true;
    if (!json_is_array(list) || json_array_size(list) != (size_t)c->layers)
        return error_set(e, "%s: layer_types is not a list of %d texts", name, c->layers);
    for (int l = 0; l < c->layers; l++) {
        const char *word = json_string_value(json_array_get(list, (size_t)l));
        const bool window = word && !strcmp(word, "sliding_attention");
        if (!window && (!word || strcmp(word, "full_attention")))
            return error_set(e,
                             "%s: layer_types: layer %d is \"%.100s\", covered are full_attention and "
                             "sliding_attention",
                             name, l, word ? word : "?");
        if (window && !windows)
            return error_set(e, "%s: layer_types: layer %d is sliding_attention, but the model has no sliding_window",
                             name, l);
        if (1u << c->family & fixed && window != !!(c->layer[l] & LAYER_WINDOW))
            return error_set(e, "%s: layer_types: layer %d is %s, which model_type %s does not apply", name, l, word,
                             huggingface_family[c->family].type);
        c->layer[l] = (uint8_t)((c->layer[l] & ~LAYER_WINDOW) | (window ? LAYER_WINDOW : 0));
    }
    return true;
}

static inline bool huggingface_layers(ModelConfig *c, const json_t *root, const char *name, Error *e) {
    const bool switched = c->family == FAMILY_QWEN2 || c->family == FAMILY_QWEN3 || c->family == FAMILY_SMOLLM3;
    const bool has_default = c->family != FAMILY_PHI3 && c->family != FAMILY_SMOLLM3;
    const bool has_window = c->family != FAMILY_LLAMA && c->family != FAMILY_OLMO2;
    int32_t used = 1, period = 6, from = 28;
    if (c->family == FAMILY_SMOLLM3 && !huggingface_no_rope(c, root, name, e)) return false;
    if (switched && !huggingface_flag(root, "use_sliding_window", false, &used, name, e)) return false;
    if (!huggingface_integer(root, "max_window_layers", 28, &from, name, e) ||
        !huggingface_integer(root, "_sliding_window_pattern", 6, &period, name, e) ||
        !huggingface_integer(root, "sliding_window_pattern", period, &period, name, e))
        return false;
    if (period < 1) return error_set(e, "%s: sliding_window_pattern is %d", name, period);
    if (used && has_window) {
        const bool absent = !json_object_get(root, "sliding_window"); /* null: no window; absent: the default */
        if (!huggingface_integer(root, "sliding_window", has_default && absent ? 4096 : 0, &c->window, name, e))
            return false;
        if (huggingface_value(root, "sliding_window") && c->window < 1)
            return error_set(e, "%s: sliding_window is %d", name, c->window);
    }
    const bool windows = c->window || c->family == FAMILY_GEMMA3; /* Gemma 3: such a layer also has another base */
    for (int l = 0; windows && l < c->layers; l++)
        if (huggingface_window_by_pattern(c, l, period, from)) c->layer[l] |= LAYER_WINDOW;
    return huggingface_layer_types(c, root, windows, name, e);
}

/* ---- config.json ------------------------------------------------------------------------------------------------- */

static inline bool huggingface_activation(const json_t *root, const char *key, bool gelu, const char *name, Error *e) {
    static const char *const silu[] = {"silu", "swish"}, *const tanh_gelu[] = {"gelu_new", "gelu_pytorch_tanh",
                                                                               "gelu_fast"};
    const json_t *value = huggingface_value(root, key);
    const char *word = json_string_value(value);
    if (!value) return true; /* the default of the class */
    if (!word) return error_set(e, "%s: %s is not a text", name, key);
    for (size_t i = 0; i < (gelu ? 3 : 2); i++)
        if (!strcmp(word, gelu ? tanh_gelu[i] : silu[i])) return true;
    return error_set(e, "%s: %s is \"%.100s\", expected %s", name, key, word,
                     gelu ? "gelu_new or gelu_pytorch_tanh" : "silu");
}

/* Sizes, norms and biases of GPT-2. */
static inline bool huggingface_read_gpt2(ModelConfig *c, const json_t *root, const char *name, Error *e) {
    if (!huggingface_integer(root, "n_embd", 768, &c->width, name, e) ||
        !huggingface_integer(root, "n_layer", 12, &c->layers, name, e) ||
        !huggingface_integer(root, "n_head", 12, &c->heads, name, e) ||
        !huggingface_integer(root, "n_positions", 1024, &c->context, name, e) ||
        !huggingface_integer(root, "n_inner", 4 * (int64_t)c->width, &c->hidden, name, e) ||
        !huggingface_float(root, "layer_norm_epsilon", 1e-5, &c->norm_eps, name, e) ||
        !huggingface_activation(root, "activation_function", true, name, e))
        return false;
    c->kv_heads = c->heads;
    c->head_size = c->heads > 0 && c->width % c->heads == 0 ? c->width / c->heads : 0;
    c->qkv_bias = c->attproj_bias = c->mlp_bias = 1;
    return true;
}

/* What the family fixes, and the keys of Gemma. */
static inline bool huggingface_quirks(ModelConfig *c, const json_t *root, const char *name, Error *e) {
    const bool gemma = c->family == FAMILY_GEMMA2 || c->family == FAMILY_GEMMA3, cap = c->family == FAMILY_GEMMA2;
    double scalar;
    c->norm = NORM_RMS;
    c->mlp = gemma ? MLP_GEGLU : MLP_SWIGLU;
    c->norm_place = gemma ? NORM_BOTH : c->family == FAMILY_OLMO2 ? NORM_POST : NORM_PRE;
    c->qk_norm = c->family == FAMILY_QWEN3 || c->family == FAMILY_GEMMA3 ? QK_NORM_HEAD
                 : c->family == FAMILY_OLMO2                             ? QK_NORM_ROW
                                                                         : QK_NORM_NONE;
    if (!huggingface_activation(root, gemma ? "hidden_activation" : "hidden_act", gemma, name, e)) return false;
    if (!gemma) return true;
    c->norm_plus_one = 1;
    c->embed_scale = sqrtf((float)c->width);
    if (!huggingface_number(root, "query_pre_attn_scalar", 256, &scalar, name, e)) return false;
    c->score_scale = (float)(1 / sqrt(scalar));
    const bool no_score = !json_object_get(root, "attn_logit_softcapping");
    const bool no_logit = !json_object_get(root, "final_logit_softcapping"); /* null: no cap; absent: the default */
    return (!cap || huggingface_float(root, "attn_logit_softcapping", no_score ? 50 : 0, &c->score_cap, name, e)) &&
           huggingface_float(root, "final_logit_softcapping", cap && no_logit ? 30 : 0, &c->logit_cap, name, e);
}

/* Sizes, norms and biases of the families with rotary positions. */
static inline bool huggingface_read_rotary(ModelConfig *c, const json_t *root, const char *name, Error *e) {
    const Family f = c->family;
    const bool gemma = f == FAMILY_GEMMA2 || f == FAMILY_GEMMA3;
    int32_t bias = 0, mlp_bias = 0;
    if (!huggingface_integer(root, "hidden_size", INT64_MIN, &c->width, name, e) ||
        !huggingface_integer(root, "num_hidden_layers", INT64_MIN, &c->layers, name, e) ||
        !huggingface_integer(root, "num_attention_heads", INT64_MIN, &c->heads, name, e) ||
        !huggingface_integer(root, "intermediate_size", INT64_MIN, &c->hidden, name, e) ||
        !huggingface_integer(root, "max_position_embeddings", INT64_MIN, &c->context, name, e))
        return false;
    const bool all_heads = f == FAMILY_LLAMA || f == FAMILY_OLMO2 || f == FAMILY_PHI3;
    const bool null_heads = json_is_null(json_object_get(root, "num_key_value_heads"));
    const int64_t kv_heads = all_heads || null_heads ? c->heads : INT64_MIN;
    const int64_t ratio = c->heads > 0 && c->width % c->heads == 0 ? c->width / c->heads : 0;
    const int64_t head_size = f == FAMILY_QWEN3 ? 128 : gemma ? 256 : ratio;
    if (!huggingface_integer(root, "num_key_value_heads", kv_heads, &c->kv_heads, name, e) ||
        !huggingface_integer(root, "head_dim", head_size, &c->head_size, name, e) ||
        !huggingface_float(root, "rms_norm_eps", huggingface_family[f].norm_eps, &c->norm_eps, name, e))
        return false;
    const bool reads_bias = f != FAMILY_MISTRAL && f != FAMILY_QWEN2 && f != FAMILY_PHI3;
    const bool reads_mlp_bias = f == FAMILY_LLAMA || f == FAMILY_SMOLLM3;
    if (reads_bias && !huggingface_flag(root, "attention_bias", false, &bias, name, e)) return false;
    if (reads_mlp_bias && !huggingface_flag(root, "mlp_bias", false, &mlp_bias, name, e)) return false;
    c->qkv_bias = f == FAMILY_QWEN2 ? 1 : bias;
    c->attproj_bias = bias;
    c->mlp_bias = mlp_bias;
    return huggingface_quirks(c, root, name, e);
}

/* Checks the architecture. *classifier: it is a sequence classifier, thus a reward model. */
static inline bool huggingface_architecture(const json_t *root, Family family, bool *classifier, const char *name,
                                            Error *e) {
    const json_t *list = huggingface_value(root, "architectures");
    static const char *const tails[] = {"ForCausalLM",
                                        "LMHeadModel",
                                        "Model",
                                        "TextModel",
                                        "ForSequenceClassification",
                                        "TextForSequenceClassification"};
    *classifier = false;
    if (!list) return true;
    const char *word = json_string_value(json_array_get(list, 0)), *stem = huggingface_family[family].stem;
    if (!json_is_array(list) || json_array_size(list) != 1 || !word)
        return error_set(e, "%s: architectures is not a list of one name", name);
    for (size_t i = 0; !strncmp(word, stem, strlen(stem)) && i < sizeof tails / sizeof *tails; i++)
        if (!strcmp(word + strlen(stem), tails[i])) {
            *classifier = strstr(tails[i], "Classification") != NULL;
            return true;
        }
    return error_set(e,
                     "%s: architecture %.100s is not covered for model_type %s, expected %sForCausalLM or "
                     "%sForSequenceClassification",
                     name, word, huggingface_family[family].type, stem, stem);
}

static inline bool huggingface_model_type(const json_t *root, Family *family, const char *name, Error *e) {
    if (!json_is_object(root)) return error_set(e, "%s: is not a JSON object", name);
    const char *type = json_string_value(json_object_get(root, "model_type"));
    if (!type) return error_set(e, "%s: has no model_type; covered are " HUGGINGFACE_COVERED, name);
    for (int i = 0; i < FAMILY_COUNT; i++)
        if (!strcmp(type, huggingface_family[i].type)) {
            *family = (Family)i;
            return true;
        }
    return error_set(e, "%s: model_type %.100s is not covered; covered are the plain decoders " HUGGINGFACE_COVERED,
                     name, type);
}

/* Reads the JSON of a config.json. name: its path, for messages. c->value_head is set for a sequence classifier. */
static inline bool huggingface_config_read(ModelConfig *c, const json_t *root, const char *name, Error *e) {
    const char *key;
    json_t *value;
    bool classifier = false;
    int32_t labels;
    *c = (ModelConfig){0};
    if (!huggingface_model_type(root, &c->family, name, e)) return false;
    json_object_foreach((json_t *)root, key, value) {
        if (!huggingface_check_key(key, value, c->family, name, e)) return false;
    }
    const HuggingfaceFamily *family = &huggingface_family[c->family];
    if (!huggingface_architecture(root, c->family, &classifier, name, e) ||
        !huggingface_integer(root, "vocab_size", c->family == FAMILY_GPT2 ? 50257 : INT64_MIN, &c->vocab, name, e) ||
        !huggingface_flag(root, "tie_word_embeddings", family->tied, &c->tied, name, e))
        return false;
    if (!(c->family == FAMILY_GPT2 ? huggingface_read_gpt2(c, root, name, e)
                                   : huggingface_read_rotary(c, root, name, e)))
        return false;
    if (c->vocab < 1 || c->vocab > 1 << 22) return error_set(e, "%s: vocab_size is %d", name, c->vocab);
    c->padded_vocab = gpt2_padded_vocab(c->vocab);
    if (c->family != FAMILY_GPT2) { /* the checks of the sizes come first: the lists below have one entry per layer */
        c->position = POSITION_ROTARY;
        if (!model_config_check(c, name, e) || !huggingface_layers(c, root, name, e) ||
            !huggingface_positions(c, root, name, e))
            return false;
    }
    const int64_t named = (int64_t)json_object_size(huggingface_value(root, "id2label"));
    if (!huggingface_integer(root, "num_labels", named ? named : classifier ? 2 : 1, &labels, name, e)) return false;
    if (classifier && labels != 1)
        return error_set(e, "%s: a classifier with %d labels, a reward model has one", name, labels);
    c->value_head = classifier;
    return model_config_check(c, name, e);
}

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

/* Appends the ids of a key that holds one id or a list of ids. vocab: the number of ids. */
static inline bool huggingface_ids(const json_t *root, const char *key, int32_t vocab, TokenList *to, const char *name,
                                   Error *e) {
    const json_t *value = huggingface_value(root, key);
    const size_t n = json_is_array(value) ? json_array_size(value) : value ? 1 : 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        const json_int_t x = json_integer_value(id);
        if (!json_is_integer(id) || x < 0 || x >= vocab)
            return error_set(e, "%s: %s is not a token below %d or a list of such tokens", name, key, vocab);
        token_list_append(to, (int32_t)x);
    }
    return true;
}

/* Appends the tokens that end a completion: those of generation_config.json (generation: its JSON or NULL) if it has
 * any, which is where a chat model's set is, else those of config.json. */
static inline bool huggingface_stops(const json_t *root, const json_t *generation, int32_t vocab, TokenList *to,
                                     const char *name, Error *e) {
    const json_t *from = huggingface_value(generation, "eos_token_id") ? generation : root;
    return huggingface_ids(from, "eos_token_id", vocab, to, name, e);
}

/* The id or the list of ids as JSON: 7 or [7,8]. */
static inline void huggingface_ids_text(TextBuffer *b, const TokenList *ids) {
    if (ids->count != 1) text_string(b, "[");
    for (int32_t i = 0; i < ids->count; i++) text_format(b, i ? ",%d" : "%d", ids->ids[i]);
    if (ids->count != 1) text_string(b, "]");
}

#endif
