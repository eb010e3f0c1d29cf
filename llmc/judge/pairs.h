/* pairs.h - a judge's labels of preference pairs, and how good they are.
 *
 *   p               probability that the chosen completion is better, both orders averaged
 *   accuracy        share of pairs with p > 1/2, so a tie is wrong; agreement: the mean of p
 *   single order    the accuracy of one question per pair, in which the chosen completion is first in every second pair
 *   length bias     accuracy where the chosen completion has more bytes minus accuracy where it has fewer (0: none)
 *   log loss, ece   of p (../reward/calibration.h)
 *
 *     JudgeEvaluation v = judge_evaluation();
 *     PairTexts text;
 *     Judge judge;
 *     Shard shard;
 *     if (!pair_texts_open(&text, &shard, &e)) return false;
 *     if (!judge_evaluate(&v, &judge, &text, &shard, shard.count, NULL, NULL, &e)) return false;
 *     pair_texts_close(&text);
 */
#ifndef LLMC_JUDGE_PAIRS_H
#define LLMC_JUDGE_PAIRS_H

#include "../base/error.h"         /* Error, xcalloc, error_set */
#include "../base/text.h"          /* TextBuffer, text_clear, TokenList, text_free, ... */
#include "../records/shard.h"      /* Shard, Record, record_free, shard_record */
#include "../reward/calibration.h" /* Calibration, calibration_add_pair, calibration_new */
#include "../text/chat.h"          /* ChatMessage, ChatTemplate, chat_encode, chat_template_free, ... */
#include "../text/tokenizer.h"     /* tokenizer_decode, Tokenizer, tokenizer_free, tokenizer_load */
#include "judge.h"                 /* JudgePair, Judge, judge_pairs */

/* The tokenizer of a shard, and its template around a user's message. */
typedef struct PairTexts {
    Tokenizer tokenizer;
    ChatTemplate chat;
    TokenList around;  /* an empty message of a user, up to the answer */
    int64_t unwrapped; /* prompts that are something else, which are read with all their tokens */
} PairTexts;

static inline void pair_texts_close(PairTexts *t) {
    tokenizer_free(&t->tokenizer);
    chat_template_free(&t->chat);
    token_list_free(&t->around);
}

/* Opens the tokenizer and the template of a shard. Fails if it has none. */
static inline bool pair_texts_open(PairTexts *t, const Shard *s, Error *e) {
    const ChatMessage user = {"user", ""};
    Error inner;
    *t = (PairTexts){0};
    if (!s->tokenizer_bytes)
        return error_set(e, "%s: has no tokenizer, so its pairs cannot be read as text; make it with make_shard",
                         s->name);
    if (!tokenizer_load(&t->tokenizer, s->tokenizer, s->tokenizer_bytes, &inner) ||
        !chat_template_parse(&t->chat, s->chat_template, &inner))
        return error_set(e, "%s: %s", s->name, inner.text);
    if (!chat_encode(&t->chat, &t->tokenizer, &user, 1, true, &t->around, NULL, NULL)) t->around.count = 0;
    return true;
}

/* Sets *out to the text of a prompt: of a user's message, its content; else everything, with special tokens. */
static inline void pair_prompt_text(PairTexts *t, const int32_t *ids, int32_t n, TextBuffer *out) {
    const TokenList *x = &t->around;
    int32_t before = 0;
    while (before < x->count && before < n && ids[before] == x->ids[before]) before++;
    const int32_t after = x->count - before;
    const bool user = before + after <= n && !memcmp(ids + n - after, x->ids + before, (size_t)after * sizeof *ids);
    text_clear(out);
    if (user) tokenizer_decode(&t->tokenizer, ids + before, n - x->count, false, out);
    else tokenizer_decode(&t->tokenizer, ids, n, true, out);
    t->unwrapped += !user;
}

/* A pair with its label. p, first, second: probability that chosen is better: of both orders, asked as the first of the two,
 * and as the second; NaN: not answered. */
typedef struct JudgedPair {
    int64_t record;
    const char *prompt, *chosen, *rejected;
    double p, first, second;
} JudgedPair;

/* Called for each pair, in order; returns false to stop with *e set. */
typedef bool (*JudgedPairWatch)(void *context, const JudgedPair *pair, Error *e);

typedef struct JudgeEvaluation {
    double pairs, unanswered;
    int64_t golds; /* pairs with a gold answer, which the judge does not read */
    double right, agreement, single;
    double longer, longer_right, shorter, shorter_right; /* pairs in which the chosen one is longer, shorter */
    Calibration calibration;
} JudgeEvaluation;

static inline JudgeEvaluation judge_evaluation(void) { return (JudgeEvaluation){.calibration = calibration_new(0.5)}; }

static inline double judge_length_bias(const JudgeEvaluation *v) {
    return v->longer_right / v->longer - v->shorter_right / v->shorter;
}

static inline void judge_evaluation_add(JudgeEvaluation *v, const JudgedPair *x) {
    const size_t chosen = strlen(x->chosen), rejected = strlen(x->rejected);
    if (isnan(x->p)) {
        v->unanswered++;
        return;
    }
    const bool right = x->p > 0.5;
    v->pairs++;
    v->right += right;
    v->agreement += x->p;
    v->single += (x->record % 2 ? x->second : x->first) > 0.5;
    v->longer += chosen > rejected;
    v->longer_right += chosen > rejected && right;
    v->shorter += chosen < rejected;
    v->shorter_right += chosen < rejected && right;
    calibration_add_pair(&v->calibration, log(x->p) - log1p(-x->p));
}

enum { JUDGE_CHUNK = 256 }; /* pairs asked about at once */

/* Labels the first `count` pairs of a preference shard and adds them to *v. watch: may be NULL. */
static inline bool judge_evaluate(JudgeEvaluation *v, Judge *j, PairTexts *t, const Shard *s, int64_t count,
                                  JudgedPairWatch watch, void *context, Error *e) {
    TextBuffer(*text)[3] = (TextBuffer(*)[3])xcalloc(JUDGE_CHUNK, sizeof *text);
    JudgePair *pair = (JudgePair *)xcalloc(JUDGE_CHUNK, sizeof *pair);
    double *p = (double *)xcalloc(3 * JUDGE_CHUNK, sizeof *p), *orders = p + JUDGE_CHUNK;
    Record r = {0};
    bool ok = true;
    for (int64_t first = 0, n; ok && first < count; first += n) {
        n = count - first < JUDGE_CHUNK ? count - first : JUDGE_CHUNK;
        for (int64_t i = 0; ok && i < n; i++) {
            TextBuffer *x = text[i];
            if (!(ok = shard_record(s, first + i, &r, e))) break;
            if (r.completions > 2) {
                ok = error_set(e, "%s: record %lld ranks %d completions; a judge labels pairs", s->name,
                               (long long)(first + i), (int)r.completions);
                break;
            }
            v->golds += r.gold > 0;
            pair_prompt_text(t, r.tokens, r.prompt, &x[0]);
            text_clear(&x[1]);
            text_clear(&x[2]);
            tokenizer_decode(&t->tokenizer, r.tokens + r.prompt, r.length[0], false, &x[1]);
            tokenizer_decode(&t->tokenizer, r.tokens + r.prompt + r.length[0], r.length[1], false, &x[2]);
            pair[i] = (JudgePair){.prompt = {x[0].text, x[0].length},
                                  .answer = {"", 0},
                                  .a = {x[1].text, x[1].length},
                                  .b = {x[2].text, x[2].length},
                                  .key = (uint64_t)(first + i)};
        }
        ok = ok && judge_pairs(j, pair, n, p, orders, e);
        for (int64_t i = 0; ok && i < n; i++) {
            const JudgedPair x = {first + i, text[i][0].text, text[i][1].text,      text[i][2].text,
                                  p[i],      orders[2 * i],   1 - orders[2 * i + 1]};
            judge_evaluation_add(v, &x);
            ok = !watch || watch(context, &x, e);
        }
    }
    for (int i = 0; i < JUDGE_CHUNK; i++)
        for (int k = 0; k < 3; k++) text_free(&text[i][k]);
    record_free(&r);
    free(text), free(pair), free(p);
    return ok;
}

#endif
