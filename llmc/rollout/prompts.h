/* prompts.h - prompts of a shard, as tokens and as text.
 *
 *     Prompts p = {0};
 *     if (!shard_open(&p.shard, "tasks.shard", &e) || !prompts_read(&p, prompt_max, &e)) die("%s", e.text);
 *     RolloutRequest q = prompts_request(&p, i, 8, id, completions);              // eight completions of prompt i
 *     RewardInput in = prompts_input(&p, i, text, length, &c, id, max_tokens);
 *     prompts_close(&p);
 */
#ifndef LLMC_ROLLOUT_PROMPTS_H
#define LLMC_ROLLOUT_PROMPTS_H

#include "../base/error.h"           /* error_set, xcalloc, Error, xmalloc */
#include "../model/model_text.h"     /* ModelText */
#include "../records/shard.h"        /* Shard, RECORD_PROMPT, Record, record_free, ... */
#include "../reward/reward_model.h"  /* RewardItem */
#include "../reward/rewards.h"       /* Rewards, rewards_scorable */
#include "../reward/verify_answer.h" /* RewardInput */
#include "rollout.h"                 /* Completion, RolloutRequest, completion_drawn, completion_drawn_ids, ... */
#include "stop_text.h"               /* stop_text_decode */
#include "trajectory.h"              /* trajectory_stop_name */

typedef struct PromptText {
    const char *text, *task, *answer, *fields; /* point into the shard */
    int file;                                  /* number of its file among those of the shard */
} PromptText;

typedef struct Prompts {
    Shard shard;
    int64_t count;
    int32_t longest;
    int32_t *tokens; /* tokens of all prompts, concatenated */
    int64_t *offset; /* (count + 1) */
    int32_t *held;   /* (count) last tokens of each that its completions begin with (RolloutRequest.held); NULL: none */
    PromptText *what; /* (count) */
    int64_t dropped;  /* prompts longer than the limit */
    int32_t too_long; /* tokens of the longest of them */
} Prompts;

static inline const int32_t *prompts_tokens(const Prompts *p, int64_t i) { return p->tokens + p->offset[i]; }
static inline int32_t prompts_held(const Prompts *p, int64_t i) { return p->held ? p->held[i] : 0; }
static inline int32_t prompts_length(const Prompts *p, int64_t i) {
    return (int32_t)(p->offset[i + 1] - p->offset[i]) - prompts_held(p, i);
}

static inline void prompts_close(Prompts *p) {
    free(p->tokens), free(p->offset), free(p->held), free(p->what);
    shard_close(&p->shard);
    *p = (Prompts){0};
}

/* Reads the prompts of the shard, which must be open. Prompts of more than `limit` tokens are left out and counted in
 * `dropped`; they are not truncated, because a truncated prompt is a different question. Fails if the shard is not a
 * prompt shard or no prompt is left. */
static inline bool prompts_read(Prompts *p, int32_t limit, Error *e) {
    Shard *s = &p->shard;
    if (s->kind != RECORD_PROMPT)
        return error_set(e, "%s: a shard of kind %s, expected prompt", s->name, record_kind_name(s->kind));
    if (!s->count) return error_set(e, "%s: the shard is empty", s->name);
    p->tokens = (int32_t *)xmalloc((size_t)s->total_tokens * sizeof *p->tokens);
    p->offset = (int64_t *)xcalloc((size_t)s->count + 1, sizeof *p->offset);
    p->what = (PromptText *)xcalloc((size_t)s->count, sizeof *p->what);
    Record r = {0};
    bool ok = true;
    for (int64_t i = 0; ok && i < s->count; i++) {
        ok = shard_record(s, i, &r, e);
        if (ok && !r.count) ok = error_set(e, "%s: record %lld: the prompt is empty", s->name, (long long)i);
        if (!ok) break;
        if (r.count > limit) {
            p->dropped++;
            if (r.count > p->too_long) p->too_long = r.count;
            continue;
        }
        const int64_t n = p->count++;
        memcpy(p->tokens + p->offset[n], r.tokens, (size_t)r.count * sizeof *r.tokens);
        p->offset[n + 1] = p->offset[n] + r.count;
        p->what[n] = (PromptText){r.text, r.task, r.answer, r.fields, shard_file(s, i)};
        if (r.count > p->longest) p->longest = r.count;
    }
    record_free(&r);
    if (ok && !p->count)
        ok = error_set(e, "%s: all %lld prompts are longer than %d tokens", s->name, (long long)s->count, limit);
    return ok;
}

/* Keeps only these prompts, in this order, none of which has held tokens. chosen: (count) their numbers. */
static inline void prompts_select(Prompts *p, const int64_t *chosen, int64_t count) {
    int64_t tokens = 0;
    assert(!p->held);
    for (int64_t i = 0; i < count; i++) tokens += prompts_length(p, chosen[i]);
    Prompts q = {.shard = p->shard, .count = count, .dropped = p->dropped};
    q.tokens = (int32_t *)xmalloc((size_t)(tokens + 1) * sizeof *q.tokens);
    q.offset = (int64_t *)xcalloc((size_t)count + 1, sizeof *q.offset);
    q.what = (PromptText *)xcalloc((size_t)count + 1, sizeof *q.what);
    for (int64_t i = 0; i < count; i++) {
        const int32_t n = prompts_length(p, chosen[i]);
        memcpy(q.tokens + q.offset[i], prompts_tokens(p, chosen[i]), (size_t)n * sizeof *q.tokens);
        q.offset[i + 1] = q.offset[i] + n;
        q.what[i] = p->what[chosen[i]];
        if (n > q.longest) q.longest = n;
    }
    free(p->tokens), free(p->offset), free(p->what);
    *p = q;
}

/* A request for `samples` completions of prompt i, which go to out: (samples). id: of the first one; the draws of a
 * completion depend on its id. */
static inline RolloutRequest prompts_request(const Prompts *p, int64_t i, int32_t samples, uint64_t id,
                                             Completion *out) {
    return (RolloutRequest){.prompt = prompts_tokens(p, i),
                            .prompt_len = prompts_length(p, i),
                            .held = prompts_held(p, i),
                            .samples = samples,
                            .id = id,
                            .out = out,
                            .record = &p->what[i]};
}

/* Completion c of prompt i, for a reward model. */
static inline RewardItem prompts_item(const Prompts *p, int64_t i, const Completion *c) {
    return (RewardItem){.prompt = prompts_tokens(p, i),
                        .prompt_len = prompts_length(p, i),
                        .completion = c->tokens,
                        .completion_len = c->count};
}

/* The text of a completion that rewards read: of several turns, that of the last one, or of all tokens that the model drew
 * (how->scope). Without the stop token or the stop text that ended it. The caller frees it. *length: its bytes, among which
 * there may be NULs; may be NULL. */
static inline char *prompts_said(const Sampling *how, const ModelText *t, const Completion *c, size_t *length) {
    const int32_t first = c->trajectory ? c->trajectory->first : 0;
    if (c->trajectory && how->scope == SCOPE_ALL)
        return stop_text_decode(&how->texts, t, completion_drawn_ids(c), completion_drawn(c), length);
    return stop_text_decode(&how->texts, t, c->tokens + first, c->count - first, length);
}

/* The reward input of a completion c to a prompt, without id, max_tokens and the prompt's tokens. text: the completion as
 * text, of `length` bytes. Lengths are those of the tokens that the model drew. */
static inline RewardInput prompt_text_input(const PromptText *w, const char *text, size_t length, const Completion *c) {
    return (RewardInput){.prompt = w->text,
                         .completion = text,
                         .completion_length = length,
                         .task = w->task,
                         .answer = w->answer,
                         .fields = w->fields,
                         .tokens = completion_drawn(c),
                         .finished = c->finished,
                         .ids = completion_drawn_ids(c),
                         .turns = c->trajectory ? c->trajectory->turns : 1,
                         .calls = c->trajectory ? c->trajectory->counts.calls : 0,
                         .stop = c->trajectory ? trajectory_stop_name(c->trajectory->stop) : NULL,
                         .messages = c->trajectory ? c->trajectory->messages : NULL,
                         .unread = c->trajectory ? c->trajectory->unread : 0};
}

/* The whole reward input of a completion c to prompt i. */
static inline RewardInput prompts_input(const Prompts *p, int64_t i, const char *text, size_t length,
                                        const Completion *c, uint64_t id, int32_t max_tokens) {
    RewardInput in = prompt_text_input(&p->what[i], text, length, c);
    in.id = id;
    in.max_tokens = max_tokens;
    in.prompt_ids = prompts_tokens(p, i);
    in.prompt_tokens = prompts_length(p, i);
    return in;
}

/* The reward input of an empty completion to prompt i. */
static inline RewardInput prompts_empty(const Prompts *p, int64_t i) {
    const Completion nothing = {0};
    return prompts_input(p, i, "", 0, &nothing, 0, 1);
}

/* Counts the prompts whose completions the rewards can score. Fails if one has an unknown task, or if there is none. */
static inline bool prompts_scorable(const Prompts *p, const Rewards *r, int64_t *count, Error *e) {
    Error inner;
    *count = 0;
    for (int64_t i = 0; i < p->count; i++) {
        const RewardInput in = prompts_empty(p, i);
        bool scorable;
        if (!rewards_scorable(r, &in, &scorable, &inner)) return error_set(e, "%s: %s", p->shard.name, inner.text);
        *count += scorable;
    }
    return *count || error_set(e, "%s: no completion can be scored: no prompt has an answer that the reward can check",
                               p->shard.name);
}

#endif
