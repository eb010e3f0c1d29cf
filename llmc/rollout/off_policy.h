/* off_policy.h - demonstrations of prompts: completions that another policy wrote, read from a field of the prompts'
 * records, which make_shard keeps (LUFFY's data: target, a list of one message of the assistant; target_lst, a list of texts).
 *
 *     {"prompt":"2+3=","answer":"5","target":"2+3 is 5"}
 *     {"prompt":"2+3=","answer":"5","target":[{"role":"assistant","content":"2+3 is 5"}, "It is 5"]}
 *
 * A text, a message of the assistant, or a list of these: each is one demonstration. Its tokens are those that the policy
 * would have drawn to write it: the text, encoded after the prompt without special tokens, and the token that ends the
 * assistant's turn. If an earlier token or text ends a completion (--stop), the demonstration ends there and is counted in
 * `shortened`. Demonstrations of more tokens than a completion may have are left out and counted in `too_long`, those beyond
 * the first `most` of a prompt in `beyond`. (LUFFY truncates long ones; those of its data fit.) As in LUFFY, a text that
 * begins with "<think>\n" is written without it after a prompt that ends with it.
 *
 *     Demonstrations d = {.key = "target", .most = 1};
 *     if (!demonstrations_read(&d, &prompts, &model_text, &sampling, 1024, &e)) die("%s", e.text);
 *     const int32_t n = demonstrations_of(&d, record);                      // 0 or 1
 *     if (n) c = demonstrations_completion(&d, record, 0);                   // free it with completion_free()
 *     demonstrations_free(&d);
 */
#ifndef LLMC_ROLLOUT_OFF_POLICY_H
#define LLMC_ROLLOUT_OFF_POLICY_H

#include "../base/error.h"       /* Error, error_set, xcalloc, xmalloc, xrealloc */
#include "../base/jsonl.h"       /* jsonl_type */
#include "../base/text.h"        /* TokenList, token_list_extend, token_list_free */
#include "../model/model_text.h" /* ModelText, model_text_decode_bytes */
#include "../text/chat.h"        /* chat_encode_end */
#include "../text/tokenizer.h"   /* tokenizer_encode, TOKENIZER_CONTINUES */
#include "prompts.h"             /* Prompts, prompts_length, prompts_tokens */
#include "rollout.h"             /* Completion, Sampling, sampling_is_stop */
#include "stop_text.h"           /* stop_text_cut */

typedef struct Demonstrations {
    const char *key; /* name of the field */
    int32_t most;    /* of a prompt; 0: none is read */
    /* set by demonstrations_read() */
    int32_t *tokens;   /* of all demonstrations, concatenated */
    int64_t *offset;   /* (count + 1) */
    int64_t *first;    /* (prompts + 1) prompt i has the demonstrations first[i] ... first[i+1]-1; NULL: none */
    int64_t count;     /* demonstrations */
    int64_t prompts;   /* prompts that have one */
    int64_t shortened; /* demonstrations that end before the end of their text */
    int64_t too_long, beyond;
    size_t token_capacity, capacity;
} Demonstrations;

static inline void demonstrations_free(Demonstrations *d) {
    free(d->tokens), free(d->offset), free(d->first);
    *d = (Demonstrations){0};
}

/* The number of demonstrations of prompt i, at most `most`. */
static inline int32_t demonstrations_of(const Demonstrations *d, int64_t i) {
    return d->first ? (int32_t)(d->first[i + 1] - d->first[i]) : 0;
}

/* The text of one demonstration, a string; NULL and an error if it is none. */
static inline const json_t *demonstrations_text(const Demonstrations *d, const json_t *value, Error *e) {
    const char *role = json_string_value(json_object_get(value, "role"));
    const json_t *text = json_is_object(value) ? json_object_get(value, "content") : value;
    if (json_is_object(value) && (!role || strcmp(role, "assistant")))
        error_set(e, "field '%.60s' has a message whose role is not assistant", d->key);
    else if (!json_is_string(text))
        error_set(e,
                  "field '%.60s' has %s, expected a demonstration: a text, a message of the assistant, or a list of "
                  "these; --target-key names another field",
                  d->key, json_is_object(value) ? "a message without a text in 'content'" : jsonl_type(value));
    else if (!json_string_length(text)) error_set(e, "field '%.60s' has an empty demonstration", d->key);
    else return text;
    return NULL;
}

/* Keeps a demonstration of n tokens. */
static inline void demonstrations_keep(Demonstrations *d, const int32_t *ids, int32_t n) {
    const int64_t at = d->count ? d->offset[d->count] : 0;
    if ((size_t)(at + n) > d->token_capacity) {
        d->token_capacity = 2 * (size_t)(at + n);
        d->tokens = (int32_t *)xrealloc(d->tokens, d->token_capacity, sizeof *d->tokens);
    }
    if ((size_t)d->count + 2 > d->capacity) {
        d->capacity = 2 * ((size_t)d->count + 2);
        d->offset = (int64_t *)xrealloc(d->offset, d->capacity, sizeof *d->offset);
    }
    memcpy(d->tokens + at, ids, (size_t)n * sizeof *ids);
    d->offset[d->count++] = at;
    d->offset[d->count] = at + n;
}

/* What the demonstrations of a prompt are made with. */
typedef struct DemonstrationContext {
    const int32_t *prompt; /* (length) */
    int32_t length, limit; /* limit: maximum tokens of a demonstration */
    const ModelText *text;
    const Sampling *how;
} DemonstrationContext;

#define DEMONSTRATION_OPENING "<think>\n"

/* The bytes at the beginning of a text that the prompt ends with: those of the opening tag of a thought, or 0. */
static inline size_t demonstrations_opened(const json_t *text, const DemonstrationContext *x) {
    const size_t n = strlen(DEMONSTRATION_OPENING);
    const int32_t tail = x->length < (int32_t)n ? x->length : (int32_t)n;
    size_t length;
    if (strncmp(json_string_value(text), DEMONSTRATION_OPENING, n)) return 0;
    char *end = model_text_decode_bytes(x->text, x->prompt + x->length - tail, tail, true, &length);
    const bool opened = length >= n && !memcmp(end + length - n, DEMONSTRATION_OPENING, n);
    free(end);
    return opened ? n : 0;
}

/* Adds a demonstration as a sample would have it. */
static inline bool demonstrations_add(Demonstrations *d, const json_t *text, const DemonstrationContext *x, Error *e) {
    Error inner;
    TokenList all = {0};
    const ModelText *t = x->text;
    const size_t opened = demonstrations_opened(text, x);
    token_list_extend(&all, x->prompt, x->length);
    bool ok = tokenizer_encode(&t->tokenizer, json_string_value(text) + opened, json_string_length(text) - opened,
                               TOKENIZER_CONTINUES, &all, &inner) &&
              chat_encode_end(&t->chat, &t->tokenizer, &all, &inner);
    const int32_t *ids = all.ids + x->length, count = all.count - x->length;
    int32_t n = 1;
    while (ok && n < count && !sampling_is_stop(x->how, ids[n - 1]) && !stop_text_cut(&x->how->texts, ids, n)) n++;
    if (ok && n > x->limit) d->too_long++;
    else if (ok) {
        d->shortened += n < count;
        demonstrations_keep(d, ids, n);
    }
    token_list_free(&all);
    return ok || error_set(e, "field '%.60s': %s", d->key, inner.text);
}

/* Reads the demonstrations of one prompt. fields: the other fields of its record as a JSON object, or "". */
static inline bool demonstrations_add_prompt(Demonstrations *d, const char *fields, const DemonstrationContext *x,
                                             Error *e) {
    const int64_t before = d->count;
    json_t *object = fields && *fields ? json_loads(fields, JSON_ALLOW_NUL, NULL) : NULL;
    const json_t *value = json_object_get(object, d->key);
    const bool list = json_is_array(value);
    const size_t n = !value || json_is_null(value) ? 0 : list ? json_array_size(value) : 1;
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        const json_t *text = demonstrations_text(d, list ? json_array_get(value, i) : value, e);
        ok = text != NULL;
        if (ok && d->count - before == d->most) d->beyond++;
        else if (ok) ok = demonstrations_add(d, text, x, e);
    }
    json_decref(object);
    d->prompts += d->count > before;
    return ok;
}

/* Reads the demonstrations of all prompts. context: positions of the model, which a prompt and its completion share. Fails if
 * a field is no demonstration, or if no prompt has one. */
static inline bool demonstrations_read(Demonstrations *d, const Prompts *p, const ModelText *t, const Sampling *how,
                                       int32_t context, Error *e) {
    Error inner;
    if (!t->present) return error_set(e, "the model has no tokenizer to encode the field '%.60s' with", d->key);
    d->first = (int64_t *)xcalloc((size_t)p->count + 1, sizeof *d->first);
    for (int64_t i = 0; i < p->count; i++) {
        DemonstrationContext x = {prompts_tokens(p, i), prompts_length(p, i), how->max_new, t, how};
        if (context - x.length < x.limit) x.limit = context - x.length;
        if (!demonstrations_add_prompt(d, p->what[i].fields, &x, &inner))
            return error_set(e, "%s: prompt %lld: %s", p->shard.name, (long long)(i + 1), inner.text);
        d->first[i + 1] = d->count;
    }
    if (d->too_long && !d->count)
        return error_set(e,
                         "%s: none of the %lld demonstrations fits into the %d tokens of a completion and the context",
                         p->shard.name, (long long)d->too_long, how->max_new);
    return d->count || error_set(e,
                                 "%s: no prompt has the field '%.60s' with a demonstration; --target-key names another "
                                 "field",
                                 p->shard.name, d->key);
}

/* Whether a field that may be a demonstration is in the records: the first prompt that has it tells. */
static inline bool demonstrations_offered(const Prompts *p, const char *key) {
    for (int64_t i = 0; i < p->count; i++) {
        json_t *object = strstr(p->what[i].fields, key) ? json_loads(p->what[i].fields, JSON_ALLOW_NUL, NULL) : NULL;
        const json_t *value = json_object_get(object, key);
        const bool has = value != NULL,
                   offered = json_is_string(value) || json_is_array(value) || json_is_object(value);
        json_decref(object);
        if (has) return offered;
    }
    return false;
}

/* Demonstration k of prompt i as a completion, whose log-probabilities are NaN: the policy did not draw it. */
static inline Completion demonstrations_completion(const Demonstrations *d, int64_t i, int32_t k) {
    const int64_t *at = d->offset + d->first[i] + k;
    Completion c = {.count = (int32_t)(at[1] - at[0]), .finished = true};
    c.tokens = (int32_t *)xmalloc((size_t)c.count * sizeof *c.tokens);
    c.logp = (float *)xmalloc((size_t)c.count * sizeof *c.logp);
    memcpy(c.tokens, d->tokens + at[0], (size_t)c.count * sizeof *c.tokens);
    for (int32_t t = 0; t < c.count; t++) c.logp[t] = NAN;
    return c;
}

#endif
