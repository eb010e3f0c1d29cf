/* local.h - a language model as a judge: exact probabilities of its labels.
 *
 * A question is a prompt that ends where the judge's answer comes. One forward pass gives the log-probability of each whole
 * label, with the token that ends the turn, as short continuations of one shared prefix: no text is parsed, and nothing is
 * sampled. With a rationale (--judge-cot) the continuation of the prompt is drawn first, and becomes part of the prefix.
 *
 *   prompt tokens | rest label_1 end | rest label_2 end | ...        rest: what follows the part that questions share
 *
 * With longrope, the length of each question, with its longest label or its rationale, selects the list of factors
 * (model/rotary.h), as if it were asked alone: an answer depends neither on the other questions nor on the model's context.
 *
 *     JudgeLocal j;
 *     JudgeLabels labels;
 *     TokenList ids = {0};
 *     const char *const texts[] = {"1", "2"};
 *     double l[2];
 *     const Backend *backend;
 *     Device *device;
 *     JudgePrompt prompt = {.ids = ids, .shared = -1};
 *     if (!judge_local_open(&j, "judge.bin", backend, device, 4096, &e)) return false;
 *     if (!judge_labels_encode(&labels, &j.text, texts, 2, &e)) return false;
 *     if (!judge_local_ask(&j, &prompt, 1, &labels, l, &e)) return false;     // NaN: does not fit the context
 *     judge_labels_free(&labels), judge_local_close(&j);
 */
#ifndef LLMC_JUDGE_LOCAL_H
#define LLMC_JUDGE_LOCAL_H

#include "../base/error.h"        /* Error, xcalloc, error_set, xrealloc, ... */
#include "../base/io.h"           /* XXH3_64bits */
#include "../base/random.h"       /* RANDOM_JUDGE */
#include "../base/text.h"         /* TokenList, token_list_extend, token_list_free, token_list_append */
#include "../model/backend.h"     /* Backend, Device */
#include "../model/batch.h"       /* Batch */
#include "../model/config.h"      /* Rope */
#include "../model/model.h"       /* Model, model_free, model_set_longest, model_sync */
#include "../model/model_file.h"  /* model_load */
#include "../model/model_fits.h"  /* model_fits_policy */
#include "../model/model_load.h"  /* ModelFile, model_file_free */
#include "../model/model_text.h"  /* ModelText, model_text_close, model_text_open */
#include "../model/pack.h"        /* batch_clear, batch_free, batch_completion, batch_fits, ... */
#include "../model/rotary.h"      /* rope_has_lists */
#include "../model/transformer.h" /* ModelOutput, model_forward */
#include "../model/workspace.h"   /* workspace_free, Workspace, workspace_new */
#include "../rollout/rollout.h"   /* Completion, RolloutRequest, Sampling, rollout_free, ... */
#include "../rollout/stop_text.h" /* StopTexts */
#include "../text/tokenizer.h"    /* TOKENIZER_CONTINUES, tokenizer_encode */

enum { JUDGE_LABELS_MAX = 100 };

/* The labels of a question as tokens, each with the token that ends the turn. */
typedef struct JudgeLabels {
    TokenList label[JUDGE_LABELS_MAX]; /* (count) */
    int count;
    int32_t longest, tokens; /* tokens of the longest, and of all */
} JudgeLabels;

/* A question as tokens. shared: the first tokens that consecutive questions share, which must be at least 1; -1: all. */
typedef struct JudgePrompt {
    TokenList ids;
    int32_t shared;
} JudgePrompt;

typedef struct JudgeLocal {
    char *name; /* the file's, for messages */
    Model model;
    ModelFile file;
    ModelText text;
    Workspace work;
    Batch batch;
    float *logp;    /* (targets) */
    int64_t *asked; /* (segments) the questions in the batch */
    int64_t rows;   /* number of tokens processed so far */
    Rollout engine; /* draws rationales; opened when the first is drawn */
    int prompt_max, new_max;
} JudgeLocal;

/* ---- labels ------------------------------------------------------------------------------------------------------ */

static inline void judge_labels_free(JudgeLabels *l) {
    for (int i = 0; i < l->count; i++) token_list_free(&l->label[i]);
    *l = (JudgeLabels){0};
}

static inline bool judge_labels_equal(const TokenList *a, const TokenList *b) {
    return a->count == b->count && !memcmp(a->ids, b->ids, (size_t)a->count * sizeof *a->ids);
}

/* Encodes the texts of n labels. Fails if one is empty, and if two are the same tokens. */
static inline bool judge_labels_encode(JudgeLabels *l, const ModelText *text, const char *const *texts, int n,
                                       Error *e) {
    *l = (JudgeLabels){0};
    for (int i = 0; i < n; i++) {
        TokenList *ids = &l->label[l->count++];
        if (!tokenizer_encode(&text->tokenizer, texts[i], strlen(texts[i]), TOKENIZER_CONTINUES, ids, e)) return false;
        if (!ids->count) return error_set(e, "label %d of the judge is empty", i + 1);
        token_list_append(ids, text->stop);
        for (int k = 0; k < i; k++)
            if (judge_labels_equal(&l->label[k], ids))
                return error_set(e, "labels %d and %d of the judge are both '%s': it could not tell them apart", k + 1,
                                 i + 1, texts[i]);
        l->tokens += ids->count;
        if (ids->count > l->longest) l->longest = ids->count;
    }
    return true;
}

/* The first n labels, which remain those of l. */
static inline JudgeLabels judge_labels_first(const JudgeLabels *l, int n) {
    JudgeLabels first = {.count = n};
    for (int i = 0; i < n; i++) {
        first.label[i] = l->label[i];
        first.tokens += l->label[i].count;
        if (l->label[i].count > first.longest) first.longest = l->label[i].count;
    }
    return first;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static inline void judge_local_close(JudgeLocal *j) {
    if (!j->model.backend) return;
    if (j->prompt_max) rollout_free(&j->engine);
    workspace_free(&j->work, &j->model);
    batch_free(&j->batch);
    model_free(&j->model);
    model_text_close(&j->text);
    model_file_free(&j->file);
    free(j->logp), free(j->asked), free(j->name);
    *j = (JudgeLocal){0};
}

/* Makes batches of `rows` tokens possible. */
static inline bool judge_local_reserve(JudgeLocal *j, int rows, Error *e) {
    workspace_free(&j->work, &j->model);
    batch_free(&j->batch);
    j->batch = batch_new(rows, rows, rows);
    j->logp = (float *)xrealloc(j->logp, (size_t)rows, sizeof *j->logp);
    j->asked = (int64_t *)xrealloc(j->asked, (size_t)rows, sizeof *j->asked);
    return workspace_new(&j->work, &j->model, rows, rows, rows, false, 0, e);
}

/* Opens the model `path`. rows: token budget of a batch, which a longer question raises. Fails on what is no language model
 * with a tokenizer; frees everything on failure. */
static inline bool judge_local_open(JudgeLocal *j, const char *path, const Backend *b, Device *d, int rows, Error *e) {
    *j = (JudgeLocal){0};
    if (!model_load(&j->model, &j->file, path, NULL, false, b, d, false, 0, NULL, e)) return false;
    j->name = xstrdup(path);
    bool ok = model_fits_policy(&j->file, j->name, e) && model_text_open(&j->text, &j->file, j->name, e);
    if (ok && !j->text.present) ok = error_set(e, "%s: it has no tokenizer, which a judge needs to read text", path);
    if (ok && j->text.stop < 0) ok = error_set(e, "%s: no token ends a turn of its chat template", path);
    ok = ok && judge_local_reserve(j, rows, e);
    if (!ok) judge_local_close(j);
    return ok;
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

/* Runs the batch. l: (questions, labels) log-probabilities of whole labels. */
static inline bool judge_local_run(JudgeLocal *j, int64_t questions, const JudgeLabels *labels, double *l, Error *e) {
    Batch *b = &j->batch;
    if (!questions) return true;
    model_forward(&j->model, &j->work, b, 1.0f, &(ModelOutput){.logp = j->logp});
    if (!model_sync(&j->model, e)) return false;
    for (int64_t i = 0, t = 0; i < questions; i++)
        for (int k = 0; k < labels->count; k++) {
            double sum = 0;
            for (int32_t n = labels->label[k].count; n > 0; n--) sum += j->logp[t++];
            l[j->asked[i] * labels->count + k] = sum;
        }
    j->rows += b->rows;
    batch_clear(b);
    return true;
}

/* Whether a sequence of so many tokens needs longrope's list for long ones. */
static inline bool judge_local_long(const JudgeLocal *j, int64_t tokens) {
    const Rope *r = &j->model.config.rope;
    return rope_has_lists(r) && tokens > r->original;
}

/* Selects longrope's list for long sequences, or the other one. */
static inline void judge_local_set_list(const JudgeLocal *j, bool is_long) {
    model_set_longest(&j->model, is_long ? j->model.config.context : j->model.config.rope.original);
}

/* Whether the first `shared` tokens of two questions are the same. */
static inline bool judge_local_shares(const JudgePrompt *a, const JudgePrompt *b, int32_t shared) {
    return shared < a->ids.count && a->shared == b->shared &&
           !memcmp(a->ids.ids, b->ids.ids, (size_t)shared * sizeof *a->ids.ids);
}

/* Adds the labels of a question, after the prefix in segment `prefix` of `shared` tokens. rest: scratch. */
static inline void judge_local_pack(Batch *b, int prefix, const JudgePrompt *q, int32_t shared,
                                    const JudgeLabels *labels, int32_t *rest, uint8_t *mask) {
    const int32_t tail = q->ids.count - shared;
    for (int k = 0; k < labels->count; k++) {
        const TokenList *x = &labels->label[k];
        memcpy(rest, q->ids.ids + shared, (size_t)tail * sizeof *rest);
        memcpy(rest + tail, x->ids, (size_t)x->count * sizeof *rest);
        memset(mask, 0, (size_t)tail);
        memset(mask + tail, 1, (size_t)x->count);
        batch_completion(b, prefix, rest, mask, tail + x->count);
    }
}

/* Computes l: (n, labels), the log-probability of each whole label after each question; NaN for all labels of a question
 * that does not fit the judge's context. Consecutive questions with the same first tokens share them. */
static inline bool judge_local_ask(JudgeLocal *j, const JudgePrompt *q, int64_t n, const JudgeLabels *labels, double *l,
                                   Error *e) {
    Batch *b = &j->batch;
    const int32_t context = j->model.config.context;
    int32_t *rest = (int32_t *)xcalloc((size_t)context + 1, sizeof *rest);
    uint8_t *mask = (uint8_t *)xcalloc((size_t)context + 1, 1);
    int64_t in_batch = 0, last = -1; /* last: the question before this one in the batch */
    int prefix = -1;
    bool ok = true, batch_long = false; /* all questions of a batch need the same list */
    batch_clear(b);
    for (int64_t i = 0; ok && i < n; i++) {
        const int32_t count = q[i].ids.count, shared = q[i].shared > 0 && q[i].shared < count ? q[i].shared : count;
        for (int k = 0; k < labels->count; k++) l[i * labels->count + k] = NAN;
        if (!count || (int64_t)count + labels->longest > context) continue;
        const int64_t more = (int64_t)(count - shared) * labels->count + labels->tokens - labels->count;
        const bool is_long = judge_local_long(j, (int64_t)count + labels->longest);
        bool same = last >= 0 && is_long == batch_long && judge_local_shares(&q[last], &q[i], shared);
        if (is_long != batch_long || !batch_fits(b, more + (same ? 0 : shared), labels->tokens, labels->count + 1)) {
            ok = judge_local_run(j, in_batch, labels, l, e);
            in_batch = 0;
            same = false;
            const int64_t rows = more + shared > labels->tokens ? more + shared : labels->tokens;
            if (ok && rows > b->rows_max) ok = judge_local_reserve(j, (int)rows, e);
        }
        if (!ok) break;
        if (!in_batch) judge_local_set_list(j, is_long);
        batch_long = is_long;
        if (!same) prefix = batch_segment(b, q[i].ids.ids, shared, 0, -1);
        judge_local_pack(b, prefix, &q[i], shared, labels, rest, mask);
        j->asked[in_batch++] = i;
        last = i;
    }
    ok = ok && judge_local_run(j, in_batch, labels, l, e);
    free(rest), free(mask);
    return ok;
}

/* ---- rationales -------------------------------------------------------------------------------------------------- */

/* How rationales are drawn. end: text that ends one, and that is added to one without it. */
typedef struct JudgeRationales {
    int samples, tokens; /* per question; at most per rationale */
    double temperature;  /* with several samples; one is greedy */
    const char *end;
    uint64_t seed;
} JudgeRationales;

enum { JUDGE_SLOTS = 32 };

/* Opens the engine for prompts of up to `longest` tokens. */
static inline bool judge_local_engine(JudgeLocal *j, int longest, int tokens, Error *e) {
    if (longest <= j->prompt_max && tokens <= j->new_max) return true;
    if (j->prompt_max) rollout_free(&j->engine);
    j->prompt_max = j->new_max = 0;
    if (!rollout_new(&j->engine, &j->model, JUDGE_SLOTS, longest, tokens, e)) return false;
    j->prompt_max = longest;
    j->new_max = tokens;
    return true;
}

/* Sets *to to a question with its rationale c: its tokens without an end of turn, and the end text if it lacks it. */
static inline bool judge_local_reason(const JudgeLocal *j, const JudgePrompt *q, const Completion *c,
                                      const Sampling *how, const JudgeRationales *r, JudgePrompt *to, Error *e) {
    const bool token = c->count && sampling_is_stop(how, c->tokens[c->count - 1]);
    const int32_t n = c->count - token;
    *to = (JudgePrompt){.shared = -1};
    token_list_extend(&to->ids, q->ids.ids, q->ids.count);
    token_list_extend(&to->ids, c->tokens, n);
    if (c->finished && !token) return true;
    return tokenizer_encode(&j->text.tokenizer, r->end, strlen(r->end), TOKENIZER_CONTINUES, &to->ids, e);
}

/* Draws r->samples rationales after each of n questions. out: (n, samples) the questions with their rationales, to be freed
 * with token_list_free(); without tokens if the question leaves no room for one. A rationale is a function of the weights,
 * the question's tokens, the seed and its number. */
static inline bool judge_local_rationales(JudgeLocal *j, const JudgePrompt *q, int64_t n, const JudgeRationales *r,
                                          const JudgeLabels *labels, JudgePrompt *out, Error *e) {
    TokenList end = {0};
    if (!tokenizer_encode(&j->text.tokenizer, r->end, strlen(r->end), TOKENIZER_CONTINUES, &end, e)) return false;
    const int32_t most = j->model.config.context - r->tokens - end.count - labels->longest, S = r->samples;
    token_list_free(&end);
    RolloutRequest *request = (RolloutRequest *)xcalloc((size_t)n + 1, sizeof *request);
    Completion *drawn = (Completion *)xcalloc((size_t)(n * S) + 1, sizeof *drawn);
    int64_t *from = (int64_t *)xcalloc((size_t)n + 1, sizeof *from), count = 0;
    int64_t first[3] = {0}; /* requests first[k] ... first[k+1] - 1 need longrope's short (0) or long (1) list */
    int longest = 1;
    Sampling how = sampling_default();
    how.temperature = S > 1 ? (float)r->temperature : 0;
    how.max_new = r->tokens;
    how.seed = r->seed;
    how.stream = RANDOM_JUDGE;
    how.texts = (StopTexts){.tokenizer = &j->text.tokenizer, .text = {r->end}, .count = 1};
    bool ok = sampling_add_stops(&how, &j->text.ends, e);
    for (int64_t i = 0; i < n * S; i++) out[i] = (JudgePrompt){.shared = -1};
    for (int is_long = 0; is_long < 2; is_long++) {
        for (int64_t i = 0; i < n; i++) {
            const TokenList *ids = &q[i].ids;
            if (!ids->count || ids->count > most || judge_local_long(j, (int64_t)ids->count + r->tokens) != is_long)
                continue;
            if (ids->count > longest) longest = ids->count;
            const uint64_t key = XXH3_64bits(ids->ids, (size_t)ids->count * sizeof *ids->ids) >> 9;
            request[count] = (RolloutRequest){
                .prompt = ids->ids, .prompt_len = ids->count, .samples = S, .id = key, .out = drawn + count * S};
            from[count++] = i;
        }
        first[is_long + 1] = count;
    }
    ok = ok && judge_local_engine(j, longest, r->tokens, e);
    for (int is_long = 0; ok && is_long < 2; is_long++) {
        const int64_t at = first[is_long];
        judge_local_set_list(j, is_long);
        ok = rollout_run(&j->engine, &how, request + at, first[is_long + 1] - at, NULL, NULL, e);
    }
    for (int64_t i = 0; i < count * S; i++) {
        const int64_t at = from[i / S];
        ok = ok && judge_local_reason(j, &q[at], &drawn[i], &how, r, &out[at * S + i % S], e);
        completion_free(&drawn[i]);
    }
    free(request), free(drawn), free(from);
    return ok;
}

#endif
