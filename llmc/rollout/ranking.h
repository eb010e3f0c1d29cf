/* ranking.h - rank classification: of a prompt's options, the one that the model gives the largest log-probability.
 *
 * Nothing is drawn. Option i of a prompt x has the tokens y_1 ... y_n, and
 *
 *     logp_i = sum_t log p(y_t | x, y_<t)
 *
 * The model's choice is the largest of logp_i (acc), of logp_i / n (acc_token, the mean of T0 and FLAN: Sanh et al. 2022,
 * section 6.1; Wei et al. 2022, section 2.4), of logp_i / characters (acc_norm) or of logp_i / bytes (acc_bytes); acc, acc_norm
 * and acc_bytes are those of lm-evaluation-harness. Of equal values the first counts.
 *
 * The fields of a prompt have the options as a list of texts: `options`, `choices` (MMLU) or `endings` (HellaSwag). The
 * answer is one of the texts, a letter (A is the first) or an index (0 is the first): whichever most answers of a file can
 * be, in this order. The prompt is computed once for all its options.
 *
 *     Ranking r;
 *     const RankHow written = {.of = RANK_TEXTS, .delimiter = " "};
 *     if (!ranking_open(&r, &prompts, count, &written, &model_text, &e)) die("%s", e.text);
 *     if (!ranking_run(&r, &model, rows, &e)) die("%s", e.text);
 *     for (int64_t i = 0; i < r.count; i++) use(&r.item[i]);
 *     const RankFigures f = ranking_figures(&r, NULL);
 *     ranking_close(&r);
 */
#ifndef LLMC_ROLLOUT_RANKING_H
#define LLMC_ROLLOUT_RANKING_H

#include "../base/error.h"        /* error_set, xcalloc, Error */
#include "../base/program.h"      /* program_stopping */
#include "../base/text.h"         /* TokenList, text_string, TextBuffer, text_clear, ... */
#include "../model/batch.h"       /* Batch */
#include "../model/model.h"       /* Model, model_set_longest, model_sync */
#include "../model/model_text.h"  /* ModelText */
#include "../model/pack.h"        /* batch_clear, batch_completion, batch_fits, batch_free, ... */
#include "../model/transformer.h" /* ModelOutput, model_forward */
#include "../model/workspace.h"   /* Workspace, workspace_free, workspace_new */
#include "../text/tokenizer.h"    /* TOKENIZER_CONTINUES, Tokenizer, tokenizer_encode */
#include "prompts.h"              /* Prompts, prompts_length, PromptText, prompts_tokens */
#include <jansson.h>
#include <math.h>

enum { RANK_OPTIONS_MAX = 256 };
typedef enum { RANK_TEXTS, RANK_LETTERS } RankOf;
typedef enum { RANK_SUM, RANK_TOKEN, RANK_NORM, RANK_BYTES, RANK_RULES } RankRule;
#define RANK_OF_CHOICES "text|letter" /* in the order of RankOf */

/* How options are written. */
typedef struct RankHow {
    RankOf of;             /* their texts, or the letters A, B, ... for texts that stand in the prompt */
    const char *delimiter; /* what stands between the prompt and an option */
} RankHow;

/* The options of a prompt. */
typedef struct RankItem {
    int count, right;         /* options; the place of the right one, or -1: the answer is none of them */
    bool fits;                /* every option fits into the model's context */
    TokenList *ids;           /* (count) */
    int32_t *letters, *bytes; /* (count) characters and bytes, without the delimiter */
    double *logp;             /* (count) NaN if it does not fit */
    int choice[RANK_RULES];   /* the model's */
} RankItem;

typedef struct Ranking {
    const Prompts *prompts;
    RankItem *item; /* (count) */
    int64_t count;
    int32_t longest; /* tokens of a prompt with all its options */
} Ranking;

/* Means over the prompts whose options fit and whose answer is one of them. */
typedef struct RankFigures {
    int64_t count, unscorable;
    double accuracy[RANK_RULES], error[RANK_RULES];
} RankFigures;

static inline const char *rank_rule_name(RankRule r) {
    static const char *const names[RANK_RULES] = {"acc", "acc_token", "acc_norm", "acc_bytes"};
    return names[r];
}

static inline void ranking_close(Ranking *r) {
    for (int64_t i = 0; i < r->count; i++) {
        RankItem *x = &r->item[i];
        for (int k = 0; k < x->count; k++) token_list_free(&x->ids[k]);
        free(x->ids), free(x->letters), free(x->bytes), free(x->logp);
    }
    free(r->item);
    *r = (Ranking){0};
}

/* ---- options and answers ----------------------------------------------------------------------------------------- */

/* The list of options in the fields of a prompt, or NULL. */
static inline const json_t *rank_list(const json_t *fields) {
    static const char *const names[] = {"options", "choices", "endings"};
    for (int i = 0; i < 3; i++) {
        const json_t *list = json_object_get(fields, names[i]);
        if (json_is_object(list)) list = json_object_get(list, "text"); /* ARC: {"text": [...], "label": [...]} */
        if (json_is_array(list)) return list;
    }
    return NULL;
}

/* Checks that the options are different texts. */
static inline bool rank_check(const json_t *list, const char *where, int64_t i, Error *e) {
    const size_t n = json_array_size(list);
    if (n < 2 || n > RANK_OPTIONS_MAX)
        return error_set(e, "%s: prompt %lld has %zu options, expected 2 to %d", where, (long long)i, n,
                         RANK_OPTIONS_MAX);
    for (size_t k = 0; k < n; k++) {
        const json_t *option = json_array_get(list, k);
        const char *text = json_string_value(option);
        if (!text || !*text || strlen(text) < json_string_length(option))
            return error_set(e, "%s: prompt %lld: option %zu is not a text, is empty, or contains a NUL", where,
                             (long long)i, k);
        for (size_t before = 0; before < k; before++)
            if (!strcmp(text, json_string_value(json_array_get(list, before))))
                return error_set(e, "%s: prompt %lld: options %zu and %zu are the same", where, (long long)i, before,
                                 k);
    }
    return true;
}

/* The place that an answer names: as one of the texts (0), a letter (1) or an index (2); -1 if it cannot. */
static inline int rank_place(const json_t *list, const char *answer, int as) {
    const int n = (int)json_array_size(list);
    if (as == 0) {
        for (int k = 0; k < n; k++)
            if (!strcmp(answer, json_string_value(json_array_get(list, (size_t)k)))) return k;
        return -1;
    }
    if (as == 1) return answer[0] >= 'A' && answer[0] < 'A' + n && !answer[1] ? answer[0] - 'A' : -1;
    char *end;
    const long k = strtol(answer, &end, 10);
    return isdigit((unsigned char)*answer) && !*end && k < n ? (int)k : -1;
}

/* What the answers of a file are; can: how many of them can be a text, a letter, an index. */
static inline int rank_answers_are(const int64_t can[3]) {
    int as = 0;
    for (int other = 1; other < 3; other++)
        if (can[other] > can[as]) as = other;
    return as;
}

/* Reads the lists of options and decides for each file what its answers are. can: (files, 3) zeros. */
static inline bool rank_answers(Ranking *r, json_t **fields, int64_t (*can)[3], Error *e) {
    const char *where = r->prompts->shard.name;
    int64_t listed = 0, answered = 0;
    for (int64_t i = 0; i < r->count; i++) {
        const char *text = r->prompts->what[i].fields;
        fields[i] = *text ? json_loads(text, JSON_ALLOW_NUL, NULL) : NULL;
        const json_t *list = rank_list(fields[i]);
        if (!list) continue;
        if (!rank_check(list, where, i, e)) return false;
        listed++;
        for (int as = 0; as < 3; as++) {
            const bool one = rank_place(list, r->prompts->what[i].answer, as) >= 0;
            can[r->prompts->what[i].file][as] += one;
            answered += one;
        }
    }
    if (!listed)
        return error_set(
            e, "%s: no prompt has options; expected a field options, choices or endings with a list of texts", where);
    if (!answered)
        return error_set(e, "%s: no prompt has an answer that is one of its options, a letter or an index", where);
    for (int64_t i = 0; i < r->count; i++) {
        const json_t *list = rank_list(fields[i]);
        const PromptText *what = &r->prompts->what[i];
        r->item[i].right = list ? rank_place(list, what->answer, rank_answers_are(can[what->file])) : -1;
    }
    return true;
}

/* The number of characters of UTF-8 text. */
static inline int32_t rank_characters(const char *text) {
    int32_t n = 0;
    for (; *text; text++) n += (*text & 0xC0) != 0x80;
    return n;
}

/* Writes the options of a prompt as tokens that continue it. */
static inline bool rank_encode(RankItem *x, const json_t *list, const RankHow *how, const Tokenizer *t, Error *e) {
    const int n = (int)json_array_size(list);
    TextBuffer text = {0};
    bool ok = true;
    x->ids = (TokenList *)xcalloc((size_t)n, sizeof *x->ids);
    x->letters = (int32_t *)xcalloc((size_t)n, sizeof *x->letters);
    x->bytes = (int32_t *)xcalloc((size_t)n, sizeof *x->bytes);
    x->logp = (double *)xcalloc((size_t)n, sizeof *x->logp);
    for (x->count = 0; ok && x->count < n; x->count++) {
        const int k = x->count;
        const char letter[2] = {(char)('A' + k), 0};
        const char *option = how->of == RANK_LETTERS ? letter : json_string_value(json_array_get(list, (size_t)k));
        text_clear(&text);
        text_string(&text, how->delimiter);
        text_string(&text, option);
        x->letters[k] = rank_characters(option);
        x->bytes[k] = (int32_t)strlen(option);
        x->logp[k] = NAN;
        ok = tokenizer_encode(t, text.text, text.length, TOKENIZER_CONTINUES, &x->ids[k], e);
        if (ok && !x->ids[k].count) ok = error_set(e, "option '%.60s' has no tokens", option);
    }
    text_free(&text);
    return ok;
}

/* Reads the options of the first `count` prompts, which must outlive the ranking. Prompts without options, or with an answer
 * that is none of them, count as unscorable. */
static inline bool ranking_open(Ranking *r, const Prompts *p, int64_t count, const RankHow *how, const ModelText *text,
                                Error *e) {
    *r = (Ranking){.prompts = p, .count = count, .item = (RankItem *)xcalloc((size_t)count + 1, sizeof *r->item)};
    json_t **fields = (json_t **)xcalloc((size_t)count + 1, sizeof *fields);
    const int files = r->prompts->shard.parts > 1 ? r->prompts->shard.parts : 1;
    int64_t(*can)[3] = (int64_t(*)[3])xcalloc((size_t)files, sizeof *can);
    bool ok = text->present || error_set(e, "the model has no tokenizer, which options need");
    ok = ok && rank_answers(r, fields, can, e);
    for (int64_t i = 0; ok && i < count; i++) {
        const json_t *list = rank_list(fields[i]);
        RankItem *x = &r->item[i];
        if (!list) continue;
        if (how->of == RANK_LETTERS && json_array_size(list) > 26)
            ok = error_set(e, "%s: prompt %lld has %zu options, more than letters", p->shard.name, (long long)i,
                           json_array_size(list));
        ok = ok && rank_encode(x, list, how, &text->tokenizer, e);
        int64_t rows = prompts_length(p, i);
        for (int k = 0; k < x->count; k++) rows += x->ids[k].count;
        if (rows > r->longest) r->longest = rows < INT32_MAX ? (int32_t)rows : INT32_MAX;
    }
    for (int64_t i = 0; i < count; i++) json_decref(fields[i]);
    free(fields), free(can);
    if (!ok) ranking_close(r);
    return ok;
}

/* ---- the model ----------------------------------------------------------------------------------------------------- */

/* The value of option k by a rule. */
static inline double rank_value(const RankItem *x, int k, RankRule rule) {
    const int32_t parts[RANK_RULES] = {1, x->ids[k].count, x->letters[k], x->bytes[k]};
    return x->logp[k] / parts[rule];
}

/* Sets the model's choices from logp. */
static inline void rank_choose(RankItem *x) {
    for (RankRule rule = 0; rule < RANK_RULES; rule++) {
        x->choice[rule] = 0;
        for (int k = 1; k < x->count; k++)
            if (rank_value(x, k, rule) > rank_value(x, x->choice[rule], rule)) x->choice[rule] = k;
    }
}

/* Runs the prompts [first, end), whose options that fit are in the batch. */
static inline bool rank_forward(Ranking *r, Model *m, Workspace *w, Batch *b, float *logp, int64_t first, int64_t end,
                                Error *e) {
    int64_t t = 0;
    if (!b->targets) return true;
    model_forward(m, w, b, 1.0f, &(ModelOutput){.logp = logp});
    if (!model_sync(m, e)) return false;
    for (int64_t i = first; i < end; i++) {
        RankItem *x = &r->item[i];
        for (int k = 0; x->fits && k < x->count; k++) {
            x->logp[k] = 0;
            for (int32_t n = x->ids[k].count; n > 0; n--) x->logp[k] += logp[t++];
        }
        if (x->fits) rank_choose(x);
    }
    batch_clear(b);
    return true;
}

/* Computes the log-probabilities of all options, and the model's choices. rows: token budget of a batch, which a prompt with
 * many options raises. A signal to stop is an error. */
static inline bool ranking_run(Ranking *r, Model *m, int rows, Error *e) {
    const int32_t context = m->config.context;
    if (r->longest > rows) rows = r->longest;
    Batch b = batch_new(rows, rows, rows);
    Workspace w;
    float *logp = (float *)xcalloc((size_t)rows, sizeof *logp);
    model_set_longest(m, r->longest);
    bool ok = workspace_new(&w, m, rows, rows, rows, false, 0, e);
    const bool made = ok;
    int64_t first = 0;
    for (int64_t i = 0; ok && i < r->count; i++) {
        RankItem *x = &r->item[i];
        const int32_t n = prompts_length(r->prompts, i);
        int64_t tokens = 0;
        ok = !program_stopping() || error_set(e, "stopped by a signal");
        x->fits = x->count > 0;
        for (int k = 0; k < x->count; k++) {
            tokens += x->ids[k].count;
            if ((int64_t)n + x->ids[k].count > context) x->fits = false;
        }
        if (!ok || !x->fits) continue;
        if (!batch_fits(&b, n + tokens, tokens, x->count + 1)) {
            ok = rank_forward(r, m, &w, &b, logp, first, i, e);
            first = i;
        }
        const int prompt = batch_segment(&b, prompts_tokens(r->prompts, i), n, 0, -1);
        for (int k = 0; k < x->count; k++) batch_completion(&b, prompt, x->ids[k].ids, NULL, x->ids[k].count);
    }
    ok = ok && rank_forward(r, m, &w, &b, logp, first, r->count, e);
    free(logp), batch_free(&b);
    if (made) workspace_free(&w, m);
    return ok;
}

/* ---- figures ------------------------------------------------------------------------------------------------------- */

/* The figures of the prompts for which `which` is true; NULL: of all. error: the standard error of the mean. */
static inline RankFigures ranking_figures(const Ranking *r, const bool *which) {
    RankFigures f = {0};
    for (int64_t i = 0; i < r->count; i++) {
        const RankItem *x = &r->item[i];
        if (which && !which[i]) continue;
        if (!x->fits || x->right < 0) {
            f.unscorable++;
            continue;
        }
        f.count++;
        for (RankRule rule = 0; rule < RANK_RULES; rule++) f.accuracy[rule] += x->choice[rule] == x->right;
    }
    for (RankRule rule = 0; rule < RANK_RULES; rule++) {
        f.accuracy[rule] = f.count ? f.accuracy[rule] / (double)f.count : NAN;
        const double p = f.accuracy[rule];
        f.error[rule] = f.count > 1 ? sqrt(p * (1 - p) / (double)(f.count - 1)) : NAN;
    }
    return f;
}

#endif
