/* reward_model.h - inference with a trained reward model: opens a checkpoint of train_rm and scores completions.
 *
 *   bt    Bradley-Terry, from preferences       score = (s - mean) / deviation, s the head's output at the last token
 *   orm   outcome, from labelled completions    the same; sigma(s) is the probability that the completion is correct
 *   prm   process, from labelled steps          p_k = sigma(s) at the end of step k; score = min p_k, product p_k or
 *                                               last p_k (Lightman et al. 2023, section 2.4; min: Wang et al. 2024,
 *                                               Math-Shepherd)
 *
 * mean and deviation are the mean and the standard deviation of s on a shard, so that scores have mean 0 and variance 1
 * there; a process model has 0 and 1. They are stored in the checkpoint's section RNRM as JSON,
 * {"kind","mean","deviation","step_token"}. A model with a value head but without that section is treated as bt with
 * mean 0 and deviation 1.
 *
 * A step ends at the token that ended all steps of the training shard (make_shard's --step-separator); in a run of
 * several such tokens, at the last one. If a completion continues after its last step with more than the stop token,
 * the rest is one more step and the step token is appended to it. Without a step token a completion is a single step.
 *
 * Owns the model, its activations and a batch. Items are packed without padding, and consecutive items with the same
 * prompt share it. An item longer than the model's context is an error: a truncated completion is a different one.
 *
 *     RewardModel rm;
 *     if (!reward_model_open(&rm, "rm.bin", backend, device, 4096, &e)) die("%s", e.text);
 *     const FitSide side = fit_model("sft.bin", &config, &file);                          // model/model_fits.h
 *     if (!reward_model_fits(&rm, &side, longest, NULL, &e)) die("%s", e.text);
 *     const RewardItem items[] = {{prompt, completion, prompt_len, completion_len}, ...};
 *     if (!reward_model_score(&rm, items, n, score, &e)) die("%s", e.text);
 *     reward_model_close(&rm);
 */
#ifndef LLMC_REWARD_REWARD_MODEL_H
#define LLMC_REWARD_REWARD_MODEL_H

#include "../base/error.h"        /* Error, error_set, xrealloc, checked_object, ... */
#include "../loss/scalar.h"       /* sigmoid */
#include "../model/backend.h"     /* Backend, Device */
#include "../model/batch.h"       /* Batch */
#include "../model/model.h"       /* Model, model_free, model_set_longest, model_sync */
#include "../model/model_file.h"  /* model_load */
#include "../model/model_fits.h"  /* FitSide, fit_model, model_fits */
#include "../model/model_load.h"  /* ModelFile, model_file_free */
#include "../model/model_text.h"  /* ModelText, model_text_close, model_text_open */
#include "../model/pack.h"        /* batch_clear, batch_free, batch_segment, batch_target, ... */
#include "../model/transformer.h" /* ModelOutput, model_forward */
#include "../model/workspace.h"   /* workspace_free, Workspace, workspace_new */

#define REWARD_MODEL_CHOICES "bt|orm|prm"
typedef enum { REWARD_MODEL_BT, REWARD_MODEL_ORM, REWARD_MODEL_PRM } RewardModelKind; /* in this order */

#define PRM_AGGREGATION_CHOICES "min|product|last"
typedef enum { PRM_MIN, PRM_PRODUCT, PRM_LAST } PrmAggregation;

/* The note: the meaning of a reward model's head, stored in the section RNRM. */
typedef struct RewardModelNote {
    RewardModelKind kind;
    double mean, deviation;
    int32_t step_token; /* prm: the token that ends a step; -1: none */
} RewardModelNote;

/* A prompt, prompt_len >= 1, and a completion with its stop token, if it has one. */
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
    PrmAggregation aggregation; /* PRM_MIN after reward_model_open(); the caller may change it */
    Workspace work;
    Batch batch;
    float *value;   /* (targets) */
    int64_t *owner; /* (targets) the item of each target */
    int32_t *steps; /* (rows) a completion with a step token appended */
    int64_t rows;   /* number of tokens processed so far */
} RewardModel;

/* ---- the note -------------------------------------------------------------------------------------------------- */

/* Formats the note, whose numbers are finite, as text for ModelFile.reward. The caller frees it. */
static inline char *reward_model_note_write(const RewardModelNote *n) {
    static const char *const kinds[] = {"bt", "orm", "prm"};
    json_t *o = json_pack("{s:s, s:f, s:f, s:i}", "kind", kinds[n->kind], "mean", n->mean, "deviation", n->deviation,
                          "step_token", (int)n->step_token);
    char *text = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    json_decref(o);
    return (char *)checked_object(text, "the note of a reward model");
}

/* Reads the note from text; NULL gives the note of a model without the section. name: of the file, for errors. */
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
    return ok || error_set(e, "%s: invalid reward normalisation: %.100s", name, text);
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static inline void reward_model_close(RewardModel *r) {
    if (!r->model.backend) return;
    workspace_free(&r->work, &r->model);
    batch_free(&r->batch);
    model_free(&r->model);
    model_text_close(&r->text);
    model_file_free(&r->file);
    free(r->value), free(r->owner), free(r->steps), free(r->name);
    *r = (RewardModel){0};
}

/* Makes batches of `rows` tokens possible. */
static inline bool reward_model_reserve(RewardModel *r, int rows, Error *e) {
    const size_t n = (size_t)rows;
    workspace_free(&r->work, &r->model);
    batch_free(&r->batch);
    r->batch = batch_new(rows, rows, rows);
    r->value = (float *)xrealloc(r->value, n, sizeof *r->value);
    r->owner = (int64_t *)xrealloc(r->owner, n, sizeof *r->owner);
    r->steps = (int32_t *)xrealloc(r->steps, n, sizeof *r->steps);
    return workspace_new(&r->work, &r->model, rows, rows, rows, false, 0, e);
}

/* Opens the checkpoint `path` ("-": standard input). rows: token budget of a batch, which a longer item raises. Fails on
 * a file that is not a checkpoint, has no value head or has an invalid note; frees everything on failure. */
static inline bool reward_model_open(RewardModel *r, const char *path, const Backend *b, Device *d, int rows,
                                     Error *e) {
    *r = (RewardModel){0};
    if (!model_load(&r->model, &r->file, path, NULL, true, b, d, false, 0, NULL, e)) return false;
    r->name = xstrdup(strcmp(path, "-") ? path : "standard input");
    bool ok = r->file.head ||
              error_set(e, "%s: it has no score head, so it is not a reward model; train one with train_rm", r->name);
    ok = ok && reward_model_note_read(&r->note, r->file.reward, r->name, e) &&
         model_text_open(&r->text, &r->file, r->name, e) && reward_model_reserve(r, rows, e);
    if (!ok) reward_model_close(r);
    return ok;
}

/* Checks that the model can be run on tokens of `other`; see model_fits(). A process model may append a step token. longest:
 * tokens of the longest sequence, or 0; see model_set_longest(). */
static inline bool reward_model_fits(const RewardModel *r, const FitSide *other, int32_t longest, Error *note,
                                     Error *e) {
    const FitSide side = fit_model(r->name, &r->model.config, &r->file);
    const bool appends = longest && r->note.kind == REWARD_MODEL_PRM && r->note.step_token >= 0;
    if (longest) model_set_longest(&r->model, longest + appends);
    return model_fits(&side, other, longest + appends, note, e);
}

/* ---- scoring --------------------------------------------------------------------------------------------------- */

/* Converts a score to a probability in [0, 1]: of being correct (orm, prm), or of being better than a completion of
 * mean score (bt). */
static inline double reward_model_probability(const RewardModel *r, double score) {
    if (r->note.kind == REWARD_MODEL_PRM) return score;
    return sigmoid(r->note.deviation * score + (r->note.kind == REWARD_MODEL_ORM ? r->note.mean : 0));
}

/* The difference of the raw outputs of the head (logits) of two completions whose scores differ by `difference`: scores
 * are normalised, logits are not. r: NULL if the scores are not of a model. */
static inline double reward_model_logits(const RewardModel *r, double difference) {
    return r && r->note.kind != REWARD_MODEL_PRM ? r->note.deviation * difference : difference;
}

/* The probability that the completion with the higher score by `difference` is preferred (Bradley and Terry 1952). */
static inline double reward_model_preference(const RewardModel *r, double difference) {
    return sigmoid(reward_model_logits(r, difference));
}

/* Whether a token ends a completion. */
static inline bool reward_model_ends(const RewardModel *r, int32_t token) {
    for (int32_t i = 0; i < r->text.ends.count; i++)
        if (r->text.ends.ids[i] == token) return true;
    return false;
}

/* The item's completion as it is scored. For a process model the token that ended it is removed, and the last step is
 * ended by a step token. Returns its length. *tokens: the item's completion, or r->steps. */
static inline int32_t reward_model_answer(RewardModel *r, const RewardItem *item, const int32_t **tokens) {
    const int32_t step = r->note.step_token;
    int32_t n = item->completion_len;
    *tokens = item->completion;
    if (r->note.kind != REWARD_MODEL_PRM || step < 0) return n;
    if (n && item->completion[n - 1] != step && reward_model_ends(r, item->completion[n - 1])) n--;
    if (n && item->completion[n - 1] == step) return n;
    if (n >= r->batch.rows_max) return n + 1; /* too long, as the caller detects */
    if (n) memcpy(r->steps, item->completion, (size_t)n * sizeof *r->steps);
    r->steps[n++] = step;
    *tokens = r->steps;
    return n;
}

/* Adds the targets of a completion: its last token, or the ends of its steps. segment: of the completion, or of the
 * prompt if the completion is empty. */
static inline void reward_model_targets(RewardModel *r, int segment, const int32_t *tokens, int32_t n, int64_t item) {
    const int32_t before = r->batch.targets, start = r->batch.segment[segment].start, step = r->note.step_token;
    if (r->note.kind == REWARD_MODEL_PRM && step >= 0)
        for (int32_t i = 0; i < n; i++)
            if (tokens[i] == step && (i + 1 == n || tokens[i + 1] != step)) batch_target(&r->batch, start + i, 0);
    if (r->batch.targets == before) batch_target(&r->batch, batch_last_row(&r->batch, segment), 0);
    for (int32_t t = before; t < r->batch.targets; t++) r->owner[t] = item;
}

/* Adds the probability p of the next step to the aggregate of a solution's steps, which starts at 1. */
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
            total = reward_model_aggregate(r->aggregation, total, sigmoid(r->value[t]));
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

/* Scores the items. score: (count), written. An empty completion is scored at the prompt's last token. Fails if an item
 * is longer than the model's context or contains a token outside its vocabulary. */
static inline bool reward_model_score(RewardModel *r, const RewardItem *items, int64_t count, float *score, Error *e) {
    Batch *b = &r->batch;
    const int32_t context = r->model.config.context, vocab = r->model.config.vocab;
    int prompt = -1; /* segment of the previous item's prompt */
    batch_clear(b);
    for (int64_t i = 0; i < count; i++) {
        const RewardItem *x = &items[i];
        const int64_t most = (int64_t)x->prompt_len + x->completion_len + 1;
        if (most > b->rows_max && most <= (int64_t)context + 1) {
            if (!reward_model_run(r, score, e) || !reward_model_reserve(r, (int)most, e)) return false;
            prompt = -1;
        }
        const int32_t *tokens, n = reward_model_answer(r, x, &tokens);
        assert(x->prompt_len >= 1);
        if ((int64_t)x->prompt_len + n > context)
            return error_set(e, "%s: a completion of %d tokens after a prompt of %d does not fit its context of %d",
                             r->name, n, x->prompt_len, context);
        for (int32_t k = 0; k < x->prompt_len + n; k++) {
            const int32_t id = k < x->prompt_len ? x->prompt[k] : tokens[k - x->prompt_len];
            if (id < 0 || id >= vocab)
                return error_set(e, "%s: token %d is outside its vocabulary of %d", r->name, id, vocab);
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
