/* model_fits.h - whether a model can be run on the tokens of another model or of a shard.
 *
 * A policy is run on its shards; a reference, a critic and a reward model are run on the shards' prompts and on the
 * policy's completions. Each of them must mean the same by a token and must have a position for every token:
 *
 *   vocabulary, context   refused if the model's is too small: it would be read beyond its end
 *   tokenizer             refused if a token of the other is not the model's token of the same id; noted if only the
 *                         rules differ by which texts are split into tokens
 *   chat template         noted if it differs, with the tokens that end a turn: the model is run on prompts of another
 *                         form than those that it was trained on, which can be meant
 *
 * What one side does not say is not compared: GPT-2's checkpoint has neither a tokenizer nor a template.
 *
 *     const FitSide policy = fit_model("the model", &model.config, &file), data = fit_shard(&shard);   // records/shard_fits.h
 *     Error note = {0};
 *     if (!model_fits(&policy, &data, 0, &note, &e)) die("%s", e.text);
 *     if (note.text[0]) warn("%s", note.text);
 */
#ifndef LLMC_MODEL_MODEL_FITS_H
#define LLMC_MODEL_MODEL_FITS_H

#include "../base/error.h"     /* Error, error_set */
#include "../text/chat.h"      /* ChatTemplate, chat_stop_token, chat_template_free, chat_template_parse */
#include "../text/tokenizer.h" /* Tokenizer, tokenizer_free, tokenizer_load, tokenizer_token */
#include "config.h"            /* ModelConfig */
#include "model_load.h"        /* ModelFile */

/* What a model or a shard says about its tokens. It points into the model's file or the shard. */
typedef struct FitSide {
    const char *name; /* for messages */
    bool shard;
    int32_t vocab, context; /* context: of a model */
    const void *tokenizer;  /* (tokenizer_bytes), or NULL */
    size_t tokenizer_bytes;
    const char *chat_template; /* or NULL */
} FitSide;

static inline FitSide fit_model(const char *name, const ModelConfig *c, const ModelFile *f) {
    return (FitSide){.name = name,
                     .vocab = c->vocab,
                     .context = c->context,
                     .tokenizer = f->tokenizer,
                     .tokenizer_bytes = f->tokenizer_bytes,
                     .chat_template = f->chat_template};
}

/* ---- tokenizers -------------------------------------------------------------------------------------------------- */

/* Copies a token's text to out, with other than printable ASCII characters as \x0a. */
static inline const char *fit_token(const Tokenizer *t, int32_t id, char out[64]) {
    size_t n, used = 0;
    const char *text = tokenizer_token(t, id, &n);
    out[0] = 0;
    for (size_t i = 0; i < n && used < 48; i++) {
        const unsigned char c = (unsigned char)text[i];
        used += (size_t)snprintf(out + used, 64 - used, c > 32 && c < 127 ? "%c" : "\\x%02x", c);
    }
    return out;
}

static inline bool fit_same_token(const Tokenizer *a, const Tokenizer *b, int32_t id) {
    size_t n, k;
    const char *x = tokenizer_token(a, id, &n), *y = tokenizer_token(b, id, &k);
    return n == k && !memcmp(x, y, n) && !a->special[id] == !b->special[id] && a->kind[id] == b->kind[id];
}

/* The first of `count` tokens that differs, or -1. */
static inline int32_t fit_first_difference(const Tokenizer *a, const Tokenizer *b, int32_t count) {
    for (int32_t id = 0; id < count; id++)
        if (id >= a->vocab || id >= b->vocab || !fit_same_token(a, b, id)) return id;
    return -1;
}

static inline bool fit_differs(const FitSide *model, const FitSide *other, const char *how, Error *e) {
    if (other->shard)
        return error_set(e,
                         "%s: it was made with a different tokenizer than the model's (%s); make the shard with the "
                         "model's tokenizer (make_shard --tokenizer)",
                         other->name, how);
    return error_set(e, "%s: it has a different tokenizer than %s (%s)", model->name, other->name, how);
}

/* Checks that all tokens of `other` are the model's. The tokenizers are open. */
static inline bool fit_tokens(const FitSide *model, const Tokenizer *own, const FitSide *other, const Tokenizer *theirs,
                              Error *note, Error *e) {
    char how[400], a[64], b[64];
    const int32_t id = fit_first_difference(theirs, own, theirs->vocab);
    if (id >= own->vocab) {
        snprintf(how, sizeof how, "%d tokens, and the model's %d", theirs->vocab, own->vocab);
        return fit_differs(model, other, how, e);
    }
    if (id >= 0) {
        snprintf(how, sizeof how, "token %d is '%s' in %.100s and '%s' in %.100s", id, fit_token(theirs, id, a),
                 other->name, fit_token(own, id, b), model->name);
        return fit_differs(model, other, how, e);
    }
    const bool same = own->merge_count == theirs->merge_count && own->flags == theirs->flags &&
                      !strcmp(own->pattern ? own->pattern : "", theirs->pattern ? theirs->pattern : "");
    if (!same && note && !note->text[0])
        error_set(note, "%s: its tokenizer has the tokens of %s, but other rules of splitting a text into them",
                  other->name, model->name);
    return true;
}

/* ---- chat templates ---------------------------------------------------------------------------------------------- */

/* The name of a template: its text if that is short, else a description. */
static inline const char *fit_template_name(const char *text) {
    return strlen(text) < 40 && !strchr(text, '\n') ? text : "a template of its own";
}

/* Writes the token that ends an assistant's turn of a template. */
static inline const char *fit_stop(const char *text, const Tokenizer *t, char out[64]) {
    ChatTemplate c;
    if (!t || !chat_template_parse(&c, text, NULL)) return "another token";
    const int32_t stop = chat_stop_token(&c, t);
    chat_template_free(&c);
    return stop >= 0 ? fit_token(t, stop, out) : "another token";
}

static inline void fit_note_template(const FitSide *model, const Tokenizer *own, const FitSide *other,
                                     const Tokenizer *theirs, Error *note) {
    char a[64], b[64];
    if (!note) return;
    error_set(note,
              "%s: its chat template is %s, whose turns end with %s; that of %s is %s, whose turns end with %s: %s",
              other->name, fit_template_name(other->chat_template), fit_stop(other->chat_template, theirs, a),
              model->name, fit_template_name(model->chat_template), fit_stop(model->chat_template, own, b),
              other->shard ? "the model is run on prompts of another form than it was trained on; make the shard with "
                             "the model's template (make_shard --template)"
                           : "they were trained on prompts of different forms");
}

/* ---- both sides -------------------------------------------------------------------------------------------------- */

/* Compares what needs the tokenizers. */
static inline bool fit_texts(const FitSide *model, const FitSide *other, Error *note, Error *e) {
    Tokenizer own, theirs;
    Error inner;
    const bool templates = model->chat_template && other->chat_template;
    const bool has[2] = {model->tokenizer && tokenizer_load(&own, model->tokenizer, model->tokenizer_bytes, &inner),
                         other->tokenizer && tokenizer_load(&theirs, other->tokenizer, other->tokenizer_bytes, &inner)};
    if (templates && strcmp(model->chat_template, other->chat_template))
        fit_note_template(model,
                          has[0]   ? &own
                          : has[1] ? &theirs
                                   : NULL,
                          other,
                          has[1]   ? &theirs
                          : has[0] ? &own
                                   : NULL,
                          note);
    const bool ok = !has[0] || !has[1] || fit_tokens(model, &own, other, &theirs, note, e);
    if (has[0]) tokenizer_free(&own);
    if (has[1]) tokenizer_free(&theirs);
    return ok;
}

/* Checks that a model file holds a language model: that it is neither a reward model nor a critic, whose value head and
 * training have left nothing to sample from. */
static inline bool model_fits_policy(const ModelFile *f, const char *name, Error *e) {
    const json_t *last = json_array_get(f->lineage, json_array_size(f->lineage) - 1);
    const char *stage = json_string_value(json_object_get(last, "stage"));
    if (f->head && f->reward)
        return error_set(e, "%s: it is a reward model, expected a language model; give it as --reward-model", name);
    if (f->head && stage && !strcmp(stage, "critic"))
        return error_set(e, "%s: it is a critic, expected a language model; give it as --critic", name);
    return true;
}

/* Whether the tokenizer of `other` is that of `model` with more tokens after its last one. */
static inline bool fit_extends(const FitSide *model, const FitSide *other) {
    Tokenizer own, more;
    if (!model->tokenizer || !other->tokenizer) return false;
    if (!tokenizer_load(&own, model->tokenizer, model->tokenizer_bytes, NULL)) return false;
    bool extends = tokenizer_load(&more, other->tokenizer, other->tokenizer_bytes, NULL);
    if (extends) {
        extends = more.vocab > own.vocab && fit_first_difference(&own, &more, own.vocab) < 0;
        tokenizer_free(&more);
    }
    tokenizer_free(&own);
    return extends;
}

/* Checks that `model` can be run on tokens of `other`. longest: positions of the longest sequence, or 0 if the model
 * truncates it or leaves it out. note: a difference that can be meant, a sentence that begins with a name; unchanged if
 * there is none; or NULL. */
static inline bool model_fits(const FitSide *model, const FitSide *other, int32_t longest, Error *note, Error *e) {
    if (other->vocab > model->vocab && other->shard)
        return error_set(e,
                         "%s: its vocabulary of %d does not fit the model's %d; make the shard with the model's "
                         "tokenizer, and with a template whose special tokens it has",
                         other->name, other->vocab, model->vocab);
    if (other->vocab > model->vocab)
        return error_set(e, "%s: its vocabulary of %d does not fit %s's %d", model->name, model->vocab, other->name,
                         other->vocab);
    if (longest > model->context)
        return error_set(e, "%s: its context of %d is shorter than the longest prompt with its completion, %d",
                         model->name, model->context, longest);
    const bool same = !model->tokenizer || !other->tokenizer ||
                      (model->tokenizer_bytes == other->tokenizer_bytes &&
                       !memcmp(model->tokenizer, other->tokenizer, model->tokenizer_bytes));
    const bool alike =
        !model->chat_template || !other->chat_template || !strcmp(model->chat_template, other->chat_template);
    return (same && alike) || fit_texts(model, other, note, e);
}

#endif
