/* thinking.h - budget forcing: completions that think for a given number of tokens and then answer (s1: Muennighoff et al.
 * 2025, 2501.19393, section 3).
 *
 * A completion is a thought, the end of thinking (--think-end, a special token or a text) and an answer. The thought is
 * drawn up to its budget. While it ends by itself, some ends may be removed and replaced by --wait-text, so that the
 * model thinks on. If the budget runs out, or if the model ends without having ended its thinking, the end of thinking and
 * --answer-text are appended, and the answer is drawn.
 *
 *   tokens   12*34= | 12*4=48 </think>        12*4=48 Wait 12*30=360 408 | </think> Final Answer: | 408 end
 *   drawn             ... removed: ^^^^^^^^      1      0      1            0 (budget ran out)      1   1
 *
 * Inserted tokens are observed: they have no log-probability and do not count as drawn (trajectory.h). A removed end is
 * never the input of a later token. The draws go on counting, so that no random number is used twice. With an infinite
 * budget and without ignored ends nothing is forced, and the completions are those of plain sampling, bit by bit.
 *
 *     Thinking x;
 *     const ThinkingOptions o = thinking_defaults();
 *     if (!thinking_open(&x, &o, 256, &model_text, &sampling, config.context, prompt_max, &e)) die("%s", e.text);
 *     sampling.max_new = x.new_max;                                       // the engine's completions have room for it
 *     engine.turns = &x.turns;
 *     rollout_run(&engine, &sampling, requests, n, NULL, NULL, &e);       // trajectory->thought: tokens of the thought
 *     thinking_close(&x);
 */
#ifndef LLMC_ROLLOUT_THINKING_H
#define LLMC_ROLLOUT_THINKING_H

#include "../base/error.h"       /* error_set, Error, xrealloc */
#include "../base/options.h"     /* OPTION_TEXT, OPTION_GROUP, OPTION_INT, Option, ... */
#include "../base/text.h"        /* TokenList, TextBuffer, text_free, token_list_free, ... */
#include "../model/model_text.h" /* ModelText */
#include "../text/tokenizer.h"   /* tokenizer_decode_more, tokenizer_special, TOKENIZER_CONTINUES, Tokenizer, ... */
#include "rollout.h"             /* Completion, RolloutAnswer, RolloutSample, RolloutTurns, ... */
#include "stop_text.h"           /* StopTexts, stop_text_cut */
#include "trajectory.h"          /* Trajectory, STOP_COMPLETED, STOP_MAX_TOKENS, trajectory_runs, ... */

enum { THINKING_BUDGETS = 32, THINKING_INFINITE = INT32_MAX };

typedef struct ThinkingOptions {
    const char *tokens, *wait, *end, *answer;
    int64_t ignore;
} ThinkingOptions;

// clang-format off
#define THINKING_OPTIONS(o)                                                                                            \
    OPTION_GROUP("Thinking"),                                                                                          \
    OPTION_TEXT("think-tokens", 0, &(o).tokens, "N",                                                                   \
                "budget forcing: think for at most N tokens (inf: no limit), then answer with --max-new-tokens"),      \
    OPTION_INT ("ignore-end",   0, &(o).ignore, 0, 1 << 20,                                                            \
                "ends of thinking that are removed and replaced by --wait-text, within the budget"),                   \
    OPTION_TEXT("wait-text",    0, &(o).wait,   "TEXT", "text that replaces an ignored end of thinking"),              \
    OPTION_TEXT("think-end",    0, &(o).end,    "TEXT", "text or special token that ends the thinking"),               \
    OPTION_TEXT("answer-text",  0, &(o).answer, "TEXT", "text after an end of thinking that the model did not write")
// clang-format on

static inline ThinkingOptions thinking_defaults(void) {
    return (ThinkingOptions){.wait = "Wait", .end = "</think>", .answer = ""};
}

static inline bool thinking_on(const ThinkingOptions *o) { return o->tokens != NULL; }

/* Rejects options that have no effect. ends: something else reads the end of thinking. */
static inline void thinking_refuse_unused(const ThinkingOptions *o, const Option *table, bool ends) {
    static const char only[] = "used only with --think-tokens";
    const bool on = thinking_on(o);
    const OptionUse use[] = {{&o->ignore, on, only},
                             {&o->wait, o->ignore > 0, "used only with --ignore-end"},
                             {&o->end, on || ends, only},
                             {&o->answer, on, only}};
    options_refuse_unused(table, use, sizeof use / sizeof *use);
}

/* Reads the budgets, separated by commas, in rising order. Returns their number, or 0 with an error. */
static inline int thinking_budgets(const ThinkingOptions *o, int32_t budget[THINKING_BUDGETS], Error *e) {
    int n = 0;
    for (const char *at = o->tokens;; at++) {
        char *end = (char *)at + 3;
        const bool infinite = !strncmp(at, "inf", 3);
        const long value = infinite ? THINKING_INFINITE : *at >= '0' && *at <= '9' ? strtol(at, &end, 10) : 0;
        if (value < 1 || value > THINKING_INFINITE || (*end && *end != ','))
            return error_set(e, "--think-tokens %s: expected whole numbers from 1, or inf, separated by commas",
                             o->tokens);
        if (n == THINKING_BUDGETS) return error_set(e, "--think-tokens: more than %d budgets", THINKING_BUDGETS);
        if (n && value <= budget[n - 1])
            return error_set(e, "--think-tokens %s: expected budgets in rising order", o->tokens);
        budget[n++] = (int32_t)value;
        at = end;
        if (!*at) return n;
    }
}

typedef struct Thinking {
    RolloutTurns turns; /* for Rollout.turns */
    const Sampling *how;
    int32_t budget, ignore, answer; /* tokens of the thought, 0: no limit; ends to ignore; tokens of the answer */
    int32_t new_max;                /* tokens of a completion */
    bool forces;                    /* false: nothing is inserted or removed */
    int32_t end_token;
    TokenList wait, closing; /* closing: the end of thinking and the text after it */
    RolloutAnswer *answers;  /* (count) of turns that have ended */
    int count, capacity;
} Thinking;

static inline void thinking_close(Thinking *x) {
    token_list_free(&x->wait), token_list_free(&x->closing);
    free(x->answers);
    *x = (Thinking){0};
}

/* ---- turns ----------------------------------------------------------------------------------------------------- */

/* The number of tokens that hold the last `bytes` bytes of a text. */
static inline int32_t thinking_tokens(const Tokenizer *t, const int32_t *tokens, int32_t n, size_t bytes) {
    for (int32_t k = 1; k < n; k++) {
        TextBuffer tail = {0};
        bool started = true;
        tokenizer_decode_more(t, tokens + n - k, k, false, &started, &tail);
        const size_t length = tail.length;
        text_free(&tail);
        if (length >= bytes) return k;
    }
    return n;
}

/* The number of tokens at the end of a turn that ended it. *thinking: they are the end of thinking. */
static inline int32_t thinking_ended(const Thinking *x, const Completion *c, bool *thinking) {
    const int32_t first = c->trajectory->first, n = c->count - first, *turn = c->tokens + first;
    const StopTexts *ends = &x->turns.ends;
    const size_t bytes = stop_text_cut(ends, turn, n);
    *thinking = bytes || turn[n - 1] == x->end_token;
    if (bytes) return thinking_tokens(ends->tokenizer, turn, n, bytes);
    const size_t stopped = *thinking ? 0 : stop_text_cut(&x->how->texts, turn, n);
    return stopped ? thinking_tokens(x->how->texts.tokenizer, turn, n, stopped) : 1;
}

/* The turn's last `remove` tokens will be removed and ids appended; ids NULL: nothing is appended. */
static inline bool thinking_park(Thinking *x, const RolloutSample *who, int32_t remove, const TokenList *ids,
                                 int32_t turn_tokens) {
    if (x->count == x->capacity) {
        x->capacity = 2 * x->capacity + 16;
        x->answers = (RolloutAnswer *)xrealloc(x->answers, (size_t)x->capacity, sizeof *x->answers);
    }
    x->answers[x->count++] = (RolloutAnswer){.request = who->request,
                                             .sample = who->sample,
                                             .ids = ids ? ids->ids : x->closing.ids,
                                             .count = ids ? ids->count : 0,
                                             .remove = remove,
                                             .turn_tokens = turn_tokens};
    return true;
}

/* The answer, or a part of it that ends with another end of thinking, has ended. */
static inline bool thinking_answered(Thinking *x, const RolloutSample *who, const Completion *c) {
    Trajectory *y = c->trajectory;
    bool thinking = false;
    if (c->finished) thinking_ended(x, c, &thinking);
    const int32_t left = y->turn_tokens - (c->count - y->first);
    if (thinking && left > 0) return thinking_park(x, who, 0, NULL, left);
    y->stop = c->finished && !thinking ? STOP_COMPLETED : STOP_MAX_TOKENS;
    return false;
}

static inline bool thinking_turn(void *context, const RolloutSample *who, const Completion *c) {
    Thinking *x = (Thinking *)context;
    Trajectory *y = c->trajectory;
    bool thinking = false;
    if (y->thought >= 0) return thinking_answered(x, who, c);
    const int32_t end = c->finished ? thinking_ended(x, c, &thinking) : 0, kept = c->count - end;
    const int32_t left = x->budget - kept - x->wait.count;
    if (c->finished && y->waits < x->ignore && left >= 1) {
        y->waits++;
        return thinking_park(x, who, end, &x->wait, left);
    }
    y->thought = kept;
    if (thinking) return thinking_park(x, who, 0, NULL, x->answer);
    if (x->forces) return thinking_park(x, who, end, &x->closing, x->answer);
    y->stop = STOP_COMPLETED;
    return false;
}

static inline int thinking_ready(void *context, bool wait, RolloutAnswer *answer, Error *e) {
    Thinking *x = (Thinking *)context;
    (void)wait;
    (void)e;
    if (!x->count) return 0;
    *answer = x->answers[--x->count];
    return 1;
}

/* The text of a completion is all of it, as in plain sampling. */
static inline void thinking_end(void *context, const RolloutSample *who, const Completion *c) {
    (void)context;
    (void)who;
    if (c->trajectory->thought < 0) c->trajectory->thought = c->count;
    c->trajectory->first = 0;
}

static inline bool thinking_finish(void *context, Error *e) {
    (void)context;
    (void)e;
    return true;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* Encodes a text that continues another one; fails unless the tokens are decoded to the same text. */
static inline bool thinking_encode(const ModelText *t, const char *option, const char *text, TokenList *ids, Error *e) {
    Error inner;
    TextBuffer back = {0};
    const int32_t special = tokenizer_special(&t->tokenizer, text), first = ids->count;
    if (special >= 0) {
        token_list_append(ids, special);
        return true;
    }
    if (!tokenizer_encode(&t->tokenizer, text, strlen(text), TOKENIZER_CONTINUES, ids, &inner))
        return error_set(e, "%s: %s", option, inner.text);
    bool started = true;
    text_append(&back, "", 0);
    tokenizer_decode_more(&t->tokenizer, ids->ids + first, ids->count - first, false, &started, &back);
    const bool same = !strcmp(back.text, text);
    text_free(&back);
    return same || error_set(e, "%s: the model's tokenizer cannot write '%s'", option, text);
}

/* Opens budget forcing with one budget for prompts of up to `longest` tokens. how: the sampling settings, whose max_new is
 * that of the answer; must outlive x. Fails if a text cannot be encoded, and if thought and answer do not fit the context. */
static inline bool thinking_open(Thinking *x, const ThinkingOptions *o, int32_t budget, const ModelText *t,
                                 const Sampling *how, int32_t context, int32_t longest, Error *e) {
    *x = (Thinking){.how = how, .ignore = (int32_t)o->ignore, .answer = how->max_new, .end_token = -1};
    x->forces = budget != THINKING_INFINITE || x->ignore;
    x->turns = (RolloutTurns){.context = x,
                              .cut = true,
                              .turn = thinking_turn,
                              .ready = thinking_ready,
                              .end = thinking_end,
                              .finish = thinking_finish};
    bool ok = t->present || error_set(e, "--think-tokens: the model has no tokenizer");
    if (ok && (!*o->end || (x->ignore && !*o->wait))) ok = error_set(e, "--think-end, --wait-text: the text is empty");
    ok = ok && thinking_encode(t, "--think-end", o->end, &x->closing, e);
    ok = ok && (!*o->answer || thinking_encode(t, "--answer-text", o->answer, &x->closing, e));
    ok = ok && (!x->ignore || thinking_encode(t, "--wait-text", o->wait, &x->wait, e));
    const int32_t room = context - longest - x->closing.count - x->answer;
    if (ok && x->forces && (room < 1 || (budget != THINKING_INFINITE && budget > room)))
        ok = error_set(e,
                       "--think-tokens: with a prompt of %d tokens and an answer of %d, %d tokens of thought fit the "
                       "context of %d; lower --max-new-tokens or the budget",
                       longest, x->answer, room > 0 ? room : 0, context);
    if (!ok) {
        thinking_close(x);
        return false;
    }
    x->budget = x->turns.turn_tokens = !x->forces ? 0 : budget < room ? budget : room;
    x->new_max = x->forces ? x->budget + x->closing.count + x->answer : context;
    if (tokenizer_special(&t->tokenizer, o->end) >= 0) {
        x->end_token = x->closing.ids[0];
        x->turns.end_tokens = &x->end_token;
        x->turns.end_token_count = 1;
    } else {
        x->turns.ends = (StopTexts){.tokenizer = &t->tokenizer, .text = {o->end}, .count = 1};
    }
    return true;
}

/* Adds the fields of a completion to a row of JSON: the tokens of the thought, the ends that were ignored, the lengths of the
 * runs of drawn and inserted tokens, beginning with the drawn ones, and why it ended. */
static inline void thinking_row(json_t *row, const Completion *c) {
    const Trajectory *y = c->trajectory;
    json_object_set_new(row, "think_tokens", json_integer(y->thought));
    json_object_set_new(row, "ignored_ends", json_integer(y->waits));
    json_object_set_new(row, "drawn", trajectory_runs(y, c->count));
    json_object_set_new(row, "stop", json_string(trajectory_stop_name(y->stop)));
}

/* ---- figures --------------------------------------------------------------------------------------------------- */

/* One budget's run: the mean tokens of its thoughts, its accuracy, and the share of thoughts within the budget. */
typedef struct ThinkingRun {
    int32_t budget;
    double tokens, accuracy, control;
} ThinkingRun;

/* s1's scaling, section 3.2: the mean over pairs of runs of the slope of accuracy by tokens; NaN without a pair that
 * differs in tokens. */
static inline double thinking_scaling(const ThinkingRun *run, int n) {
    double sum = 0, pairs = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < n; k++) {
            if (!(run[k].tokens > run[i].tokens)) continue;
            sum += (run[k].accuracy - run[i].accuracy) / (run[k].tokens - run[i].tokens);
            pairs++;
        }
    return pairs ? sum / pairs : NAN;
}

#endif
