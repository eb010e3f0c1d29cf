/* tokenizer_gguf.h - tokenizers as the arrays of a GGUF file's metadata, in both directions.
 *
 *   field              key tokenizer.ggml.* (GGUF)   meaning
 *   model              model                         gpt2: byte-level BPE; llama: SentencePiece-like, by scores;
 *                                                    gemma4: SentencePiece-like, by merges; others are refused
 *   pre                pre                           name of the pattern, for gpt2 only; see tokenizer_gguf_pre[]
 *   tokens             tokens                        by id: in GPT-2's alphabet for gpt2, else with U+2581 for spaces
 *   types              token_type                    1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
 *   scores             scores                        for llama: the pair whose result has the highest score is merged
 *   merges             merges                        "left right", for gpt2 and gemma4
 *   bos .. unknown     bos_token_id, ...             -1: not given
 *   add_bos            add_bos_token                 -1: not given; then true for llama and Llama 3's patterns
 *   add_space_prefix   add_space_prefix              -1: not given; then true for llama
 *   architecture       general.architecture          phi3 with llama: white space after special tokens belongs to them
 *
 * Unknown and control tokens are special; user-defined tokens are added tokens that are not; unused ones are ids
 * without a token. GGUF does not contain the normaliser: with Qwen's patterns it is normalisation form C, as in the
 * original tokenizers. Ends of a completion are eos, eot, eom and the special tokens that end a turn or a text in the
 * supported families. Ignored: the ids of padding, masks and code completion, add_eos_token, and precompiled
 * normalisers.
 *
 *     Tokenizer t;
 *     TokenizerGguf g = tokenizer_gguf_empty();
 *     g.model = "gpt2";
 *     g.pre = "qwen2";
 *     ...                                                                       // from the file
 *     if (!tokenizer_open_gguf(&t, &g, "model.gguf", e)) return false;
 *
 * Sources: llama.cpp's src/llama-vocab.cpp and conversion/base.py; transformers' generate_merges().
 */
#ifndef LLMC_TEXT_TOKENIZER_GGUF_H
#define LLMC_TEXT_TOKENIZER_GGUF_H

#include "../base/error.h"   /* error_set, Error, xcalloc, xrealloc, ... */
#include "../base/text.h"    /* TextSlice, TextBuffer, text_free, token_list_append, ... */
#include "bpe.h"             /* Merge, BpeSlot, bpe_merge */
#include "pretokenize.h"     /* PRETOKENIZER_LLAMA3, PRETOKENIZER_GPT2, PRETOKENIZER_GPT2_DIGITS, ... */
#include "tokenizer.h"       /* TOKENIZER_ADD_BOS, TOKENIZER_WHOLE, Tokenizer, TOKENIZER_CHARACTERS, ... */
#include "tokenizer_files.h" /* TokenizerSource, ADDED_IN_VOCABULARY, TOKENIZER_SIGN, tokenizer_guess_end, ... */
#include "tokenizer_write.h" /* tokenizer_print, tokenizer_printed */

enum { TOKENIZER_SCORED_MAX = 512 }; /* maximum bytes of a token, if merges are derived from scores */

/* token_type of GGUF */
enum {
    GGUF_TOKEN_NORMAL = 1,
    GGUF_TOKEN_UNKNOWN,
    GGUF_TOKEN_CONTROL,
    GGUF_TOKEN_USER_DEFINED,
    GGUF_TOKEN_UNUSED,
    GGUF_TOKEN_BYTE,
};

typedef struct TokenizerGguf {
    const char *architecture, *model, *pre; /* NULL: not given */
    const TextSlice *tokens;                /* (count) */
    const int32_t *types;                   /* (count), or NULL: all normal */
    const float *scores;                    /* (count), or NULL */
    const TextSlice *merges;                /* (merge_count), or NULL */
    int64_t count, merge_count;
    int64_t bos, eos, eot, eom, unknown;
    int add_bos, add_space_prefix;
} TokenizerGguf;

typedef struct TokenizerGgufPre {
    const char *name, *pattern;
    uint32_t flags;
} TokenizerGgufPre;

// clang-format off
/* The first row with a pattern and flags is the one that is written. */
static const TokenizerGgufPre tokenizer_gguf_pre[] = {
    {"gpt-2",            PRETOKENIZER_GPT2,        0},
    {"smollm",           PRETOKENIZER_GPT2_DIGITS, 0},
    {"llama-bpe",        PRETOKENIZER_LLAMA3,      TOKENIZER_WHOLE | TOKENIZER_ADD_BOS},
    {"dbrx",             PRETOKENIZER_LLAMA3,      0},
    {"qwen2",            PRETOKENIZER_QWEN2,       TOKENIZER_NFC},
    {"qwen35",           PRETOKENIZER_QWEN35,      TOKENIZER_NFC},
    {"tekken",           PRETOKENIZER_TEKKEN,      TOKENIZER_WHOLE},
    {"gpt-4o",           PRETOKENIZER_O200K,       0},
    {"olmo",             PRETOKENIZER_GPT2,        0},
    {"jais",             PRETOKENIZER_GPT2,        0},
    {"phi-2",            PRETOKENIZER_GPT2,        0},
    {"mpt",              PRETOKENIZER_GPT2,        0},
    {"trillion",         PRETOKENIZER_GPT2,        0},
    {"granite-docling",  PRETOKENIZER_GPT2,        0},
    {"exaone4",          PRETOKENIZER_GPT2,        0},
    {"starcoder",        PRETOKENIZER_GPT2_DIGITS, 0},
    {"refact",           PRETOKENIZER_GPT2_DIGITS, 0},
    {"command-r",        PRETOKENIZER_GPT2_DIGITS, 0},
    {"codeshell",        PRETOKENIZER_GPT2_DIGITS, 0},
    {"exaone",           PRETOKENIZER_GPT2_DIGITS, 0},
    {"minerva-7b",       PRETOKENIZER_GPT2_DIGITS, 0},
    {"llama3",           PRETOKENIZER_LLAMA3,      TOKENIZER_WHOLE | TOKENIZER_ADD_BOS},
    {"llama-v3",         PRETOKENIZER_LLAMA3,      TOKENIZER_WHOLE | TOKENIZER_ADD_BOS},
    {"falcon3",          PRETOKENIZER_LLAMA3,      TOKENIZER_WHOLE | TOKENIZER_ADD_BOS},
    {"falcon-h1",        PRETOKENIZER_LLAMA3,      TOKENIZER_WHOLE | TOKENIZER_ADD_BOS},
    {"lfm2",             PRETOKENIZER_LLAMA3,      TOKENIZER_WHOLE | TOKENIZER_ADD_BOS},
    {"pixtral",          PRETOKENIZER_LLAMA3,      TOKENIZER_WHOLE | TOKENIZER_ADD_BOS},
    {"smaug-bpe",        PRETOKENIZER_LLAMA3,      0},
    {"chatglm-bpe",      PRETOKENIZER_LLAMA3,      0},
    {"glm4",             PRETOKENIZER_LLAMA3,      TOKENIZER_WHOLE},
    {"deepseek-r1-qwen", PRETOKENIZER_QWEN2,       TOKENIZER_NFC},
    {"megrez",           PRETOKENIZER_QWEN2,       TOKENIZER_NFC},
    {"stablelm2",        PRETOKENIZER_QWEN2,       0},
    {"llama4",           PRETOKENIZER_O200K,       0},
};
// clang-format on

static inline TokenizerGguf tokenizer_gguf_empty(void) {
    return (TokenizerGguf){
        .bos = -1, .eos = -1, .eot = -1, .eom = -1, .unknown = -1, .add_bos = -1, .add_space_prefix = -1};
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

/* Finds the form: its flags and, for byte-level BPE, its pattern. */
static inline bool tokenizer_gguf_form(const TokenizerGguf *g, const char *name, uint32_t *flags, const char **pattern,
                                       Error *e) {
    *pattern = NULL;
    if (!g->model) return error_set(e, "%s: has no tokenizer.ggml.model", name);
    const bool scored = !strcmp(g->model, "llama");
    if (scored || !strcmp(g->model, "gemma4")) {
        *flags = TOKENIZER_CHARACTERS | TOKENIZER_REPLACE | TOKENIZER_FUSE;
        if (scored ? g->add_space_prefix : g->add_space_prefix > 0) *flags |= TOKENIZER_PREPEND | TOKENIZER_STRIP;
        if (scored && !g->scores) return error_set(e, "%s: has no tokenizer.ggml.scores", name);
        if (scored ? g->add_bos : g->add_bos > 0) *flags |= TOKENIZER_ADD_BOS;
        return true;
    }
    if (strcmp(g->model, "gpt2"))
        return error_set(e, "%s: tokenizer.ggml.model is '%.40s', expected gpt2, llama or gemma4", name, g->model);
    if (!g->pre) return error_set(e, "%s: has no tokenizer.ggml.pre, the name of the pattern of its tokenizer", name);
    if (g->add_space_prefix > 0)
        return error_set(e, "%s: tokenizer.ggml.add_space_prefix is not supported with gpt2", name);
    for (size_t i = 0; i < sizeof tokenizer_gguf_pre / sizeof *tokenizer_gguf_pre; i++)
        if (!strcmp(tokenizer_gguf_pre[i].name, g->pre)) {
            *pattern = tokenizer_gguf_pre[i].pattern;
            *flags = tokenizer_gguf_pre[i].flags;
            if (g->add_bos == 1) *flags |= TOKENIZER_ADD_BOS;
            if (g->add_bos == 0) *flags &= ~(uint32_t)TOKENIZER_ADD_BOS;
            return true;
        }
    return error_set(e, "%s: tokenizer.ggml.pre is '%.40s', a pattern that is not supported", name, g->pre);
}

/* Whether the token is one that llama.cpp's converter makes up for an id without a token. Older versions of it call
 * these user-defined. */
static inline bool tokenizer_gguf_padding(TextSlice token, int32_t id) {
    char name[24];
    const int n = snprintf(name, sizeof name, "[PAD%d]", id);
    return token.length == (size_t)n && !memcmp(token.text, name, token.length);
}

/* Returns the type of a token. */
static inline int tokenizer_gguf_type_of(const TokenizerGguf *g, int32_t id) {
    const int type = g->types ? g->types[id] : GGUF_TOKEN_NORMAL;
    return type == GGUF_TOKEN_USER_DEFINED && tokenizer_gguf_padding(g->tokens[id], id) ? GGUF_TOKEN_UNUSED : type;
}

/* Lists the tokens. Their texts are in *all. */
static inline bool tokenizer_gguf_tokens(const TokenizerGguf *g, TokenizerSource *s, TextBuffer *all, Error *e) {
    const bool characters = s->flags & TOKENIZER_CHARACTERS;
    const bool strip = characters && g->architecture && !strcmp(g->architecture, "phi3");
    size_t *at = (size_t *)xcalloc((size_t)g->count, sizeof *at);
    bool ok = true;
    for (int32_t id = 0; id < s->count && ok; id++) {
        const TextSlice token = g->tokens[id];
        const int type = tokenizer_gguf_type_of(g, id);
        at[id] = all->length;
        if (type < GGUF_TOKEN_NORMAL || type > GGUF_TOKEN_BYTE)
            ok = error_set(e, "%s: token %d is of type %d, expected 1 to 6", s->file, id, type);
        else if (token.length > TOKENIZER_TOKEN_MAX || memchr(token.text, 0, token.length) ||
                 utf8_valid(token.text, token.length) != token.length)
            ok = error_set(e, "%s: token %d is not UTF-8 of at most %d bytes without NULs", s->file, id,
                           TOKENIZER_TOKEN_MAX);
        const bool added = type == GGUF_TOKEN_UNKNOWN || type == GGUF_TOKEN_CONTROL || type == GGUF_TOKEN_USER_DEFINED;
        if (ok && added && (!token.length || token.length > TOKENIZER_NAME_MAX))
            ok = error_set(e, "%s: token %d has a name of %zu bytes, expected 1 to %d", s->file, id, token.length,
                           TOKENIZER_NAME_MAX);
        if (!ok || type == GGUF_TOKEN_UNUSED) continue;
        if (added) {
            const bool special = type != GGUF_TOKEN_USER_DEFINED;
            s->added[id] = (uint8_t)(1 + (special ? ADDED_SPECIAL : characters ? ADDED_IN_VOCABULARY : 0));
        }
        s->bytes |= type == GGUF_TOKEN_BYTE;
        for (size_t i = 0; i < token.length; i++) /* llama.cpp's converter writes the spaces of user-defined tokens */
            if (characters && token.text[i] == ' ') text_string(all, TOKENIZER_SIGN);
            else text_append(all, token.text + i, 1);
        text_append(all, "", 1);
    }
    for (int32_t id = 0; id < s->count && ok; id++) {
        const bool none = tokenizer_gguf_type_of(g, id) == GGUF_TOKEN_UNUSED || !g->tokens[id].length;
        if (none) continue;
        s->token[id] = all->text + at[id];
        if (json_object_get(s->vocab, s->token[id]))
            ok = error_set(e, "%s: token %d is '%.60s', as is another", s->file, id, s->token[id]);
        else json_object_set_new(s->vocab, s->token[id], json_integer(id));
        const bool kept =
            !strcmp(s->token[id], "<unk>") || !strcmp(s->token[id], "<s>") || !strcmp(s->token[id], "<|endoftext|>");
        if (strip && s->added[id] && !kept) s->added[id] += ADDED_RSTRIP;
    }
    free(at);
    return ok;
}

/* Reads the merges of gpt2 and gemma4. */
static inline bool tokenizer_gguf_merges(const TokenizerGguf *g, const TokenizerSource *s, Tokenizer *t, Error *e) {
    if (g->merge_count < 0 || g->merge_count > INT32_MAX / (int)sizeof(Merge) || (g->merge_count && !g->merges))
        return error_set(e, "%s: has %lld merges, expected at most %d", s->file, (long long)g->merge_count,
                         INT32_MAX / (int)sizeof(Merge));
    TextBuffer where = {0}, text = {0};
    text_format(&where, "%s: tokenizer.ggml.merges", s->file);
    t->merges = (Merge *)xcalloc((size_t)g->merge_count, sizeof *t->merges);
    bool ok = true;
    for (int64_t i = 0; i < g->merge_count && ok; i++) {
        text_clear(&text);
        text_append(&text, g->merges[i].text, g->merges[i].length);
        ok = strlen(text.text) == text.length || error_set(e, "%s %lld: contains a NUL", where.text, (long long)i);
        ok = ok && tokenizer_merge_text(s, where.text, (size_t)i, text.text, &t->merges[i], e);
        t->merge_count += ok;
    }
    text_free(&where);
    text_free(&text);
    return ok;
}

/* A merge and what it is sorted by. */
typedef struct TokenizerScored {
    Merge merge;
    float score;
    int32_t left, right; /* characters */
} TokenizerScored;

/* Higher scores first, then longer left and right halves, then lower ids. */
static inline int tokenizer_compare_scored(const void *a, const void *b) {
    const TokenizerScored *x = (const TokenizerScored *)a, *y = (const TokenizerScored *)b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    if (x->left != y->left) return x->left > y->left ? -1 : 1;
    if (x->right != y->right) return x->right > y->right ? -1 : 1;
    if (x->merge.merged != y->merge.merged) return x->merge.merged < y->merge.merged ? -1 : 1;
    if (x->merge.left != y->merge.left) return x->merge.left < y->merge.left ? -1 : 1;
    return (x->merge.right > y->merge.right) - (x->merge.right < y->merge.right);
}

static inline int32_t tokenizer_characters(const char *text, size_t n) {
    int32_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

/* Derives the merges of a SentencePiece-like tokenizer from the scores of its tokens: every division of a token into
 * two others is a merge. Merges of equal score have the same rank. */
static inline bool tokenizer_gguf_scores(Tokenizer *t, const float *scores, const char *name, Error *e) {
    TokenizerScored *all = NULL;
    size_t count = 0, capacity = 0, n;
    bool ok = true;
    tokenizer_start_index(t);
    for (int32_t id = 0; id < t->vocab && ok; id++) {
        const char *token = tokenizer_token(t, id, &n);
        if (!tokenizer_ordinary(t, id)) continue;
        if (n > TOKENIZER_SCORED_MAX || scores[id] != scores[id])
            ok = error_set(e, "%s: token %d has %zu bytes and score %g, expected at most %d and a number", name, id, n,
                           scores[id], TOKENIZER_SCORED_MAX);
        for (size_t i = 1; i < n && ok; i++) {
            if (((unsigned char)token[i] & 0xC0) == 0x80) continue;
            const int32_t left = tokenizer_find(t, token, i), right = tokenizer_find(t, token + i, n - i);
            if (left < 0 || right < 0) continue;
            if (count == capacity) {
                capacity = 2 * capacity + 1024;
                all = (TokenizerScored *)xrealloc(all, capacity, sizeof *all);
            }
            all[count++] = (TokenizerScored){{left, right, id, 0},
                                             scores[id],
                                             tokenizer_characters(token, i),
                                             tokenizer_characters(token + i, n - i)};
        }
    }
    if (ok && count > INT32_MAX / sizeof(Merge)) ok = error_set(e, "%s: has too many tokens for merges by score", name);
    if (ok && count) qsort(all, count, sizeof *all, tokenizer_compare_scored);
    t->merges = (Merge *)xcalloc(count, sizeof *t->merges);
    for (size_t i = 0; i < count && ok; i++) {
        t->merges[i] = all[i].merge;
        t->merges[i].rank = i && all[i].score == all[i - 1].score ? t->merges[i - 1].rank : (int32_t)i;
    }
    t->merge_count = ok ? (int32_t)count : 0;
    free(all);
    free(t->index);
    t->index = NULL;
    return ok;
}

/* Sets the tokens with a meaning. */
static inline bool tokenizer_gguf_named(const TokenizerGguf *g, Tokenizer *t, const char *name, Error *e) {
    static const char *const ends[] = {"</s>",    "<eos>",         "<|eot_id|>",    "<|eom_id|>",     "<|im_end|>",
                                       "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"};
    const int64_t given[] = {g->bos, g->unknown, g->eos, g->eot, g->eom};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++)
        if (given[i] < -1 || given[i] >= t->vocab)
            return error_set(e, "%s: bos, unknown, eos, eot or eom token is %lld, expected one below %d", name,
                             (long long)given[i], t->vocab);
    t->bos = (int32_t)g->bos;
    t->unknown = t->flags & TOKENIZER_CHARACTERS ? (int32_t)g->unknown : -1; /* llama.cpp omits bytes without a token */
    t->eos = (int32_t)g->eos;
    if (t->eos < 0 && !tokenizer_guess_end(t, e)) return false;
    if (t->bos < 0 && g->add_bos <= 0) t->flags &= ~(uint32_t)TOKENIZER_ADD_BOS;
    TokenList list = {0};
    token_list_append(&list, t->eos);
    if (g->eot >= 0) token_list_append(&list, (int32_t)g->eot);
    if (g->eom >= 0) token_list_append(&list, (int32_t)g->eom);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        const int32_t id = tokenizer_special(t, ends[i]);
        if (id >= 0 && t->special[id]) token_list_append(&list, id);
    }
    const bool ok = tokenizer_set_ends(t, list.ids, list.count, e);
    token_list_free(&list);
    return ok;
}

static inline bool tokenizer_read_gguf(Tokenizer *t, const TokenizerGguf *g, const char *name, Error *e) {
    TokenizerSource s = {.file = name};
    const char *pattern;
    TextBuffer all = {0};
    if (!tokenizer_gguf_form(g, name, &s.flags, &pattern, e)) return false;
    if (g->count < 1 || g->count > TOKENIZER_VOCAB_MAX || !g->tokens)
        return error_set(e, "%s: has %lld tokens, expected 1 to %d", name, (long long)g->count, TOKENIZER_VOCAB_MAX);
    s.count = (int32_t)g->count;
    s.vocab = json_object();
    s.token = (const char **)xcalloc((size_t)s.count, sizeof *s.token);
    s.added = (uint8_t *)xcalloc((size_t)s.count, 1);
    text_clear(&all);
    const bool scored = !strcmp(g->model, "llama");
    bool ok = tokenizer_gguf_tokens(g, &s, &all, e) && (scored || tokenizer_gguf_merges(g, &s, t, e)) &&
              tokenizer_source_tokens(&s, false, t, e);
    t->flags = s.flags;
    t->pattern = pattern ? xstrdup(pattern) : NULL;
    if (ok) tokenizer_source_merges(t);
    ok = ok && tokenizer_gguf_named(g, t, name, e) && (!scored || tokenizer_gguf_scores(t, g->scores, name, e));
    free(s.token);
    free(s.added);
    json_decref(s.vocab);
    text_free(&all);
    return ok;
}

/* Opens the tokenizer of a GGUF file. The arrays are not needed afterwards. Messages begin with `name`. */
static inline bool tokenizer_open_gguf(Tokenizer *t, const TokenizerGguf *g, const char *name, Error *e) {
    *t = (Tokenizer){.eos = -1, .bos = -1, .unknown = -1};
    if (tokenizer_read_gguf(t, g, name, e) && tokenizer_start(t, name, e)) return true;
    tokenizer_free(t);
    return false;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

/* The arrays that g points to. */
typedef struct TokenizerGgufArrays {
    TokenizerGguf g;
    TextSlice *tokens, *merges;
    int32_t *types;
    float *scores;
    TextBuffer text;
} TokenizerGgufArrays;

static inline void tokenizer_gguf_free(TokenizerGgufArrays *a) {
    free(a->tokens);
    free(a->merges);
    free(a->types);
    free(a->scores);
    text_free(&a->text);
    *a = (TokenizerGgufArrays){0};
}

static inline int32_t tokenizer_gguf_type(const Tokenizer *t, int32_t id) {
    const TokenizerAdded *added = tokenizer_added_at(t, id);
    if (t->flags & TOKENIZER_CHARACTERS && id == t->unknown) return GGUF_TOKEN_UNKNOWN;
    if (added) return added->flags & ADDED_SPECIAL ? GGUF_TOKEN_CONTROL : GGUF_TOKEN_USER_DEFINED;
    if (t->start[id + 1] == t->start[id]) return GGUF_TOKEN_UNUSED;
    return t->kind[id] & TOKEN_BYTE ? GGUF_TOKEN_BYTE : GGUF_TOKEN_NORMAL;
}

/* Sets the scores by which a SentencePiece-like tokenizer merges, and checks that these give the same merges. */
static inline bool tokenizer_gguf_to_scores(const Tokenizer *t, TokenizerGgufArrays *a, Error *e) {
    for (int32_t id = 0; id < t->vocab; id++) a->scores[id] = (float)-(t->merge_count + 1);
    for (int32_t i = t->merge_count - 1; i >= 0; i--) a->scores[t->merges[i].merged] = (float)-t->merges[i].rank;
    Tokenizer other = *t;
    other.merges = NULL;
    other.index = NULL;
    bool same = t->merge_count < 1 << 24 && tokenizer_gguf_scores(&other, a->scores, "tokenizer", e) &&
                other.merge_count == t->merge_count;
    for (int32_t i = 0; i < t->merge_count && same; i++) {
        const Merge *m = &other.merges[i];
        const BpeSlot *s = bpe_merge(&t->scratch->bpe, m->left, m->right);
        same = s && s->merged == m->merged && m->merged == t->merges[i].merged;
    }
    free(other.merges);
    return same ||
           error_set(e, "tokenizer: its merges are not those of scores of its tokens, so GGUF cannot contain it");
}

/* Finds the name of the pattern. */
static inline bool tokenizer_gguf_to_pre(const Tokenizer *t, TokenizerGguf *g, Error *e) {
    const uint32_t kept = TOKENIZER_WHOLE | TOKENIZER_NFC;
    for (size_t i = 0; i < sizeof tokenizer_gguf_pre / sizeof *tokenizer_gguf_pre && !g->pre; i++)
        if (t->pattern && !strcmp(t->pattern, tokenizer_gguf_pre[i].pattern) &&
            (t->flags & kept) == (tokenizer_gguf_pre[i].flags & kept))
            g->pre = tokenizer_gguf_pre[i].name;
    return g->pre || error_set(e, "tokenizer: llama.cpp has no name for its pattern, so GGUF cannot contain it");
}

/* Makes the arrays of GGUF's metadata; the caller frees them. Fails if GGUF cannot express the tokenizer: a pattern
 * without a name, or merges that no scores express. GGUF cannot express the white space that belongs to added tokens
 * either (llama.cpp derives it from the model's name), nor the normaliser; both are lost, as with llama.cpp's
 * converter. */
static inline bool tokenizer_to_gguf(const Tokenizer *t, TokenizerGgufArrays *a, Error *e) {
    const bool characters = t->flags & TOKENIZER_CHARACTERS;
    const size_t vocab = (size_t)t->vocab;
    uint16_t print[256] = {0};
    tokenizer_printed(print);
    *a = (TokenizerGgufArrays){.g = tokenizer_gguf_empty()};
    a->g.model = characters ? "llama" : "gpt2";
    a->tokens = (TextSlice *)xcalloc(vocab, sizeof *a->tokens);
    a->types = (int32_t *)xcalloc(vocab, sizeof *a->types);
    a->scores = characters ? (float *)xcalloc(vocab, sizeof *a->scores) : NULL;
    a->merges = characters ? NULL : (TextSlice *)xcalloc((size_t)t->merge_count, sizeof *a->merges);
    bool ok = characters ? !(t->flags & (TOKENIZER_SPLIT | TOKENIZER_WHOLE)) ||
                               error_set(e, "tokenizer: GGUF cannot express that it splits text at spaces")
                         : tokenizer_gguf_to_pre(t, &a->g, e);
    if (!ok || (characters && !tokenizer_gguf_to_scores(t, a, e))) {
        tokenizer_gguf_free(a);
        return false;
    }
    for (int32_t id = 0; id < t->vocab; id++) {
        const size_t before = a->text.length;
        tokenizer_print(t, print, id, &a->text);
        a->types[id] = tokenizer_gguf_type(t, id);
        if (a->types[id] == GGUF_TOKEN_UNUSED) text_format(&a->text, "[PAD%d]", id);
        a->tokens[id].length = a->text.length - before;
    }
    for (int32_t i = 0; !characters && i < t->merge_count; i++) {
        const size_t before = a->text.length;
        tokenizer_print(t, print, t->merges[i].left, &a->text);
        text_string(&a->text, " ");
        tokenizer_print(t, print, t->merges[i].right, &a->text);
        a->merges[i].length = a->text.length - before;
    }
    const char *at = a->text.text;
    for (size_t id = 0; id < vocab; at += a->tokens[id++].length) a->tokens[id].text = at;
    for (int32_t i = 0; !characters && i < t->merge_count; at += a->merges[i++].length) a->merges[i].text = at;
    a->g.tokens = a->tokens;
    a->g.types = a->types;
    a->g.scores = a->scores;
    a->g.merges = a->merges;
    a->g.count = t->vocab;
    a->g.merge_count = characters ? 0 : t->merge_count;
    a->g.bos = t->bos;
    a->g.eos = t->eos;
    a->g.unknown = t->unknown;
    a->g.add_bos = t->add_bos;
    a->g.add_space_prefix = characters && t->flags & (TOKENIZER_PREPEND | TOKENIZER_PREFIX);
    return true;
}

#endif
