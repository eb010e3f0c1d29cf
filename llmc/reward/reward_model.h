/* reward_model.h - a trained reward model at work: it opens the checkpoint that train_rm wrote and scores answers.
 *
 *   bt    Bradley-Terry, from preferences   score = (s - mean) / deviation, s the head's output at the answer's last token
 *   orm   outcome, from labelled answers    the same; sigma(s) is the chance that the answer is right
 *   prm   process, from labelled steps      p_k = sigma(s) at the end of step k; score = min p_k, product p_k or last p_k
 *                                           (Lightman et al. 2023, section 2.4; min: Wang et al. 2024, Math-Shepherd)
 *
 * mean and deviation are those of s on a shard, so that a score has mean 0 and variance 1 there; a process model has 0
 * and 1. They stand in the checkpoint's section RNRM as JSON, {"kind","mean","deviation","step_token"}; a model with a
 * value head and no such section counts as bt, mean 0, deviation 1.
 *
 * Where steps end: at the token that all steps of the training shard ended in (make_shard's --step-separator), the last
 * one where several stand in a row. An answer that goes on after its last step, but for the stop token, has one more,
 * which the token is appended to. Without such a token an answer is one step.
 *
 * Owns the model, its activations and a batch. Items are packed without padding; consecutive ones of the same prompt share
 * it. An item longer than the model's context is refused: a cut answer is another answer.
 *
 *     RewardModel rm;
 *     if (!reward_model_open(&rm, "rm.bin", backend, device, 4096, &e)) die("%s", e.text);
 *     if (!reward_model_check(&rm, vocab, tokenizer, bytes, "sft.bin", &e)) die("%s", e.text);
 *     const RewardItem item[] = {{prompt, answer, prompt_len, answer_len}, ...};
 *     if (!reward_model_score(&rm, item, n, score, &e)) die("%s", e.text);
 *     reward_model_close(&rm);
 */
#ifndef LLMC_REWARD_REWARD_MODEL_H
#define LLMC_REWARD_REWARD_MODEL_H

#include "../loss/reward.h"
#include "../model/transformer.h"
#include "../model/model_text.h"
#include "../model/pack.h"

#define REWARD_MODEL_CHOICES "bt|orm|prm"
typedef enum { REWARD_MODEL_BT, REWARD_MODEL_ORM, REWARD_MODEL_PRM } RewardModelKind; /* in that order */

#define PRM_AGGREGATION_CHOICES "min|product|last"
typedef enum { PRM_MIN, PRM_PRODUCT, PRM_LAST } PrmAggregation;

/* What a reward model's head means: the section RNRM. */
typedef struct RewardModelNote {
    RewardModelKind kind;
    double mean, deviation;
    int32_t step_token; /* prm: -1 where the steps had no token in common at their ends */
} RewardModelNote;

/* An answer to a prompt, as tokens; the answer with its stop token where it has one. prompt_len >= 1. */
typedef struct RewardItem {
    const int32_t *prompt, *completion;
    int32_t prompt_len, completion_len;
} RewardItem;

typedef struct RewardModel {
    char *name; /* the file's, for messages */
    Model model;
    ModelFile file;
    ModelText text;
    RewardModelNote note;
    PrmAggregation aggregation; /* the caller may set it; min after reward_model_open() */
    Workspace work;
    Batch batch;
    float *value;   /* (targets) */
    int64_t *owner; /* (targets) the item that a target's score belongs to */
    int32_t *steps; /* an item's tokens with its steps marked off: (rows) */
    int64_t rows;   /* that went through the model so far */
} RewardModel;

/* ---- the note -------------------------------------------------------------------------------------------------- */

/* As text for ModelFile.reward; to be freed. */
static inline char *reward_model_note_write(const RewardModelNote *n) {
    static const char *const kinds[] = {"bt", "orm", "prm"};
    json_t *o = json_pack("{s:s, s:f, s:f, s:i}", "kind", kinds[n->kind], "mean", n->mean, "deviation", n->deviation,
                          "step_token", (int)n->step_token);
    char *text = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    json_decref(o);
    return (char *)checked(text, 0);
}

/* text NULL: what a model without the section counts as. name: the file's. */
static inline bool reward_model_note_read(RewardModelNote *n, const char *text, const char *name, Error *e) {
    *n = (RewardModelNote){.deviation = 1, .step_token = -1};
    if (!text) return true;
    json_t *o = json_loads(text, 0, NULL);
    const char *kind = json_string_value(json_object_get(o, "kind"));
    const json_t *token = json_object_get(o, "step_token");
    n->kind = kind && !strcmp(kind, "orm")   ? REWARD_MODEL_ORM
              : kind && !strcmp(kind, "prm") ? REWARD_MODEL_PRM
                                             : REWARD_MODEL_BT;
    n->mean = json_number_value(json_object_get(o, "mean"));
    n->deviation = json_number_value(json_object_get(o, "deviation"));
    const json_int_t id = json_is_integer(token) ? json_integer_value(token) : -1;
    n->step_token = id >= 0 && id <= INT32_MAX ? (int32_t)id : -1;
    const bool ok = kind && (n->kind != REWARD_MODEL_BT || !strcmp(kind, "bt")) && isfinite(n->mean) &&
                    n->deviation > 0 && isfinite(n->deviation);
    json_decref(o);
    return ok || error_set(e, "%s: reward normalisation: it makes no sense: %.100s", name, text);
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static inline void reward_model_close(RewardModel *r) {
    if (!r->model.backend) return;
    workspace_free(&r->work, &r->model), batch_free(&r->batch);
    model_free(&r->model), model_text_close(&r->text), model_file_free(&r->file);
    free(r->value), free(r->owner), free(r->steps), free(r->name);
    *r = (RewardModel){0};
}

/* Opens the checkpoint `path` ("-": standard input). rows: tokens that go through the model at once; raised to its context.
 * Errors: no checkpoint, no value head, a damaged note. On failure nothing is left allocated. */
static inline bool reward_model_open(RewardModel *r, const char *path, const Backend *b, Device *d, int rows,
                                     Error *e) {
    *r = (RewardModel){0};
    if (!model_load(&r->model, &r->file, path, NULL, true, b, d, false, 0, NULL, e)) return false;
    r->name = xstrdup(strcmp(path, "-") ? path : "standard input");
    const int context = r->model.config.context, n = rows > context ? rows : context; /* the longest answer fits */
    bool ok = r->file.head ||
              error_set(e, "%s: it has no score head, so it is no reward model; train_rm makes them", r->name);
    ok = ok && reward_model_note_read(&r->note, r->file.reward, r->name, e) &&
         model_text_open(&r->text, &r->file, r->name, e) && workspace_new(&r->work, &r->model, n, n, n, false, 0, e);
    r->batch = batch_new(n, n, n);
    r->value = (float *)xcalloc((size_t)n, sizeof *r->value);
    r->owner = (int64_t *)xcalloc((size_t)n, sizeof *r->owner);
    r->steps = (int32_t *)xcalloc((size_t)n, sizeof *r->steps);
    if (!ok) reward_model_close(r);
    return ok;
}

/* Does it read the tokens of `name`, which has this vocabulary and tokenizer (NULL: none)? */
static inline bool reward_model_check(const RewardModel *r, int32_t vocab, const void *tokenizer, size_t bytes,
                                      const char *name, Error *e) {
    if (vocab > r->model.config.vocab)
        return error_set(e, "%s: its vocabulary of %d does not fit %s's of %d", r->name, r->model.config.vocab, name,
                         vocab);
    if (tokenizer && r->file.tokenizer &&
        (bytes != r->file.tokenizer_bytes || memcmp(tokenizer, r->file.tokenizer, bytes)))
        return error_set(e, "%s: it has another tokenizer than %s", r->name, name);
    return true;
}

/* ---- scoring --------------------------------------------------------------------------------------------------- */

/* A score as a weight or probability in [0, 1]: that of being right (orm, prm); bt: of being better than an answer of
 * mean score. */
static inline double reward_model_probability(const RewardModel *r, double score) {
    if (r->note.kind == REWARD_MODEL_PRM) return score;
    return reward_sigmoid(r->note.kind == REWARD_MODEL_ORM ? r->note.mean + r->note.deviation * score : score);
}

/* The item's answer as it is scored: a process model's without the stop token and with an end to its last step. Returns
 * its length; *tokens are the item's own or r->steps. */
static inline int32_t reward_model_answer(RewardModel *r, const RewardItem *item, const int32_t **tokens) {
    const int32_t stop = r->text.stop, step = r->note.step_token;
    int32_t n = item->completion_len;
    *tokens = item->completion;
    if (r->note.kind != REWARD_MODEL_PRM || step < 0) return n;
    if (n && stop >= 0 && stop != step && item->completion[n - 1] == stop) n--;
    if (n && item->completion[n - 1] == step) return n;
    if (n >= r->batch.rows_max) return n + 1; /* more than it can take, which the caller finds */
    if (n) memcpy(r->steps, item->completion, (size_t)n * sizeof *r->steps);
    r->steps[n++] = step, *tokens = r->steps;
    return n;
}

/* Adds the targets of an answer: its last token, or the ends of its steps. segment: its own, or its prompt's where it is
 * empty. */
static inline void reward_model_targets(RewardModel *r, int segment, const int32_t *tokens, int32_t n, int64_t item) {
    const int32_t before = r->batch.targets, start = r->batch.segment[segment].start, step = r->note.step_token;
    for (int32_t i = 0; r->note.kind == REWARD_MODEL_PRM && step >= 0 && i < n; i++)
        if (tokens[i] == step && (i + 1 == n || tokens[i + 1] != step)) batch_target(&r->batch, start + i, 0);
    if (r->batch.targets == before) batch_target(&r->batch, batch_last_row(&r->batch, segment), 0);
    for (int32_t t = before; t < r->batch.targets; t++) r->owner[t] = item;
}

/* What is made of a solution's steps, one after another: before the first, total is 1; p: the next one's probability. */
static inline double reward_model_aggregate(PrmAggregation how, double total, double p) {
    return how == PRM_LAST ? p : how == PRM_MIN ? fmin(total, p) : total * p;
}

/* Runs the batch and turns its values into scores. */
static inline bool reward_model_run(RewardModel *r, float *score, Error *e) {
    const RewardModelNote *note = &r->note;
    const Batch *b = &r->batch;
    if (!b->targets) return true;
    model_forward(&r->model, &r->work, b, 1.0f, &(ModelOutput){.value = r->value});
    if (!model_sync(&r->model, e)) return false;
    for (int32_t t = 0; t < b->targets;) {
        const int64_t item = r->owner[t];
        double total = 1;
        if (note->kind != REWARD_MODEL_PRM) {
            score[item] = (float)((r->value[t++] - note->mean) / note->deviation);
            continue;
        }
        for (; t < b->targets && r->owner[t] == item; t++)
            total = reward_model_aggregate(r->aggregation, total, reward_sigmoid(r->value[t]));
        score[item] = (float)total;
    }
    r->rows += b->rows;
    batch_clear(&r->batch);
    return true;
}

static inline bool reward_model_same_prompt(const RewardItem *a, const RewardItem *b) {
    return a->prompt_len == b->prompt_len &&
           (a->prompt == b->prompt || !memcmp(a->prompt, b->prompt, (size_t)a->prompt_len * sizeof *a->prompt));
}

/* score: (count), written. An empty answer is scored at its prompt's last token. Errors: an item longer than the model's
 * context, or of tokens that it does not know. */
static inline bool reward_model_score(RewardModel *r, const RewardItem *items, int64_t count, float *score, Error *e) {
    Batch *b = &r->batch;
    const int32_t context = r->model.config.context, vocab = r->model.config.vocab;
    int prompt = -1; /* the segment of the last item's prompt */
    batch_clear(b);
    for (int64_t i = 0; i < count; i++) {
        const RewardItem *x = &items[i];
        const int32_t *tokens, n = reward_model_answer(r, x, &tokens);
        assert(x->prompt_len >= 1);
        if ((int64_t)x->prompt_len + n > context)
            return error_set(e, "%s: an answer of %d tokens to a prompt of %d does not fit its context of %d", r->name,
                             n, x->prompt_len, context);
        for (int32_t k = 0; k < x->prompt_len + n; k++) {
            const int32_t id = k < x->prompt_len ? x->prompt[k] : tokens[k - x->prompt_len];
            if (id < 0 || id >= vocab)
                return error_set(e, "%s: token %d is beyond its vocabulary of %d", r->name, id, vocab);
        }
        bool shared = prompt >= 0 && reward_model_same_prompt(&items[i - 1], x);
        if (!batch_fits(b, n + (shared ? 0 : x->prompt_len), n + 1, 2)) {
            if (!reward_model_run(r, score, e)) return false;
            shared = false;
        }
        if (!shared) prompt = batch_segment(b, x->prompt, x->prompt_len, 0, -1);
        const int answer = n ? batch_segment(b, tokens, n, x->prompt_len, prompt) : prompt;
        reward_model_targets(r, answer, tokens, n, i);
    }
    return reward_model_run(r, score, e);
}

#endif
