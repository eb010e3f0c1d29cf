/* evaluation_reward.h - evaluation of a reward model on labelled data: accuracy, margin, ranking, calibration.
 *
 *   shard        question                             accuracy                         calibration (calibration.h)
 *   preference   does the chosen one score higher?    share of pairs; a tie is wrong   of sigma(s_chosen - s_rejected)
 *                                                     (all pairs of a ranking)
 *   unpaired     is the completion good?              at probability 1/2 (orm, prm)    of its probability
 *   step         is the solution correct up to here?  the same, over steps (prm)       of the steps' probabilities
 *
 * Scores are normalised as the model specifies; calibration and log loss use the head's raw output, which is a logit.
 * auc is the probability that a good completion (or step) scores above a bad one, counting ties as half (Mann and
 * Whitney 1947). It needs no threshold, so it also applies to a Bradley-Terry model on an unpaired shard, whose scores
 * have no zero. solutions is the share of solutions for which the aggregated score predicts correctly whether all steps
 * are correct.
 *
 * Records longer than the model's context are left out and counted.
 *
 *     RewardEvaluation v;
 *     if (!evaluate_rewards(&v, &rm, &shard, shard.count, NULL, NULL, &e)) die("%s", e.text);
 */
#ifndef LLMC_REWARD_EVALUATION_REWARD_H
#define LLMC_REWARD_EVALUATION_REWARD_H

#include "../base/error.h"        /* xcalloc, Error, error_set, xmalloc, ... */
#include "../loss/scalar.h"       /* sigmoid */
#include "../model/batch.h"       /* Batch */
#include "../model/micro_plan.h"  /* BatchSize */
#include "../model/model.h"       /* model_sync */
#include "../model/pack.h"        /* batch_clear, batch_fits */
#include "../model/transformer.h" /* ModelOutput, model_forward */
#include "../records/examples.h"  /* Example, example_labels, example_pack_scores, example_size */
#include "../records/shard.h"     /* RECORD_PREFERENCE, RECORD_STEP, Shard, Record, ... */
#include "calibration.h"          /* calibration_new, Calibration, calibration_add_label, calibration_add_pair, ... */
#include "reward_model.h"         /* RewardItem, REWARD_MODEL_PRM, RewardModel, REWARD_MODEL_BT, ... */

enum { EVALUATION_REWARD_CHUNK = 256 }; /* records scored at once */

typedef struct RewardEvaluation {
    int64_t records, dropped;
    int64_t golds;    /* preference: records with a gold answer, which is not scored */
    double units;     /* number of pairs, completions or steps */
    double accuracy;  /* NaN: the model has no threshold */
    double margin;    /* preference: mean of chosen score - rejected score; else NaN */
    double auc;       /* NaN for a preference shard, or if all labels are equal */
    double solutions; /* step: see above; else NaN */
    /* of the scores, or of the step probabilities: minimum, mean, standard deviation, maximum */
    double least, mean, deviation, most;
    double log_loss, ece; /* NaN if the model gives no probability for these labels */
    Calibration calibration;
} RewardEvaluation;

/* Called after each chunk; returns false to stop. */
typedef bool (*RewardWatch)(void *context, int64_t done, int64_t all);

/* A score and its label. */
typedef struct RankedScore {
    double score;
    int label;
} RankedScore;

static inline int ranked_compare(const void *a, const void *b) {
    const double x = ((const RankedScore *)a)->score, y = ((const RankedScore *)b)->score;
    return (x > y) - (x < y);
}

/* The area under the ROC curve; sorts the n scores. */
static inline double rank_auc(RankedScore *s, int64_t n) {
    double ranks = 0, good = 0;
    qsort(s, (size_t)n, sizeof *s, ranked_compare);
    for (int64_t i = 0, end; i < n; i = end) { /* equal scores get their mean rank */
        double here = 0;
        for (end = i; end < n && s[end].score == s[i].score; end++) here += s[end].label;
        ranks += here * 0.5 * (double)(i + 1 + end);
        good += here;
    }
    const double bad = (double)n - good;
    return good > 0 && bad > 0 ? (ranks - 0.5 * good * (good + 1)) / (good * bad) : NAN;
}

/* Running sums of an evaluation. The margin and the accuracy in *v are sums until tally_end(). */
typedef struct RewardTally {
    RewardModel *model;
    RewardEvaluation *v;
    RankedScore *ranked; /* (n), grows */
    int64_t n, capacity;
    double scores, total, squares, solutions;
} RewardTally;

static inline void tally_score(RewardTally *t, double score) {
    t->scores++;
    t->total += score;
    t->squares += score * score;
    t->v->least = fmin(t->v->least, score);
    t->v->most = fmax(t->v->most, score);
}

/* Adds a completion or a step. logit: the raw output of the head; share: the label, a probability of which 1/2 and more is
 * good. */
static inline void tally_label(RewardTally *t, double score, double logit, double share) {
    const int label = share >= 0.5;
    if (t->n == t->capacity) {
        t->capacity = 2 * t->capacity + 1024;
        t->ranked = (RankedScore *)xrealloc(t->ranked, (size_t)t->capacity, sizeof *t->ranked);
    }
    t->ranked[t->n++] = (RankedScore){score, label};
    t->v->units++;
    t->v->accuracy += (logit > 0) == label;
    calibration_add_label(&t->v->calibration, logit, share);
    tally_score(t, score);
}

/* Adds the scores of a ranking of n completions. */
static inline void tally_ranking(RewardTally *t, const float *score, int32_t n) {
    const bool process = t->model->note.kind == REWARD_MODEL_PRM;
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = i + 1; j < n; j++) {
            const double difference = (double)score[i] - score[j];
            t->v->units++;
            t->v->accuracy += difference > 0;
            t->v->margin += difference;
            calibration_add_pair(&t->v->calibration, process ? NAN : reward_model_logits(t->model, difference));
        }
        tally_score(t, score[i]);
    }
}

/* Adds the score of a completion with a label. */
static inline void tally_answer(RewardTally *t, double score, uint8_t label) {
    const RewardModelNote *note = &t->model->note;
    const double p = reward_model_probability(t->model, score);
    tally_label(t, score, note->kind == REWARD_MODEL_PRM ? log(p) - log1p(-p) : note->mean + note->deviation * score,
                label);
}

/* Scores records [first, end) of a preference or unpaired shard. Scratch: tokens, item, score: (tokens of a chunk);
 * label, completions: (chunk). */
static inline bool tally_answers(RewardTally *t, const Shard *s, int64_t first, int64_t end, Record *r,
                                 RewardItem *item, int32_t *tokens, float *score, uint8_t *label, int32_t *completions,
                                 Error *e) {
    int64_t n = 0, records = 0;
    for (int64_t i = first; i < end; i++) {
        if (!shard_record(s, i, r, e)) return false;
        const int32_t rest = r->count - r->prompt, *length = r->completions ? r->length : &rest;
        const int32_t count = r->completions ? r->completions : 1;
        int32_t longest = 0;
        for (int32_t k = 0; k < count; k++) longest = length[k] > longest ? length[k] : longest;
        /* A process model may append a step token. */
        const int32_t room = t->model->model.config.context - (t->model->note.step_token >= 0);
        if (r->prompt < 1 || (int64_t)r->prompt + longest > room) {
            t->v->dropped++;
            continue;
        }
        memcpy(tokens, r->tokens, (size_t)r->count * sizeof *tokens);
        const int32_t *at = tokens + r->prompt;
        for (int32_t k = 0; k < count; at += length[k], k++) item[n++] = (RewardItem){tokens, at, r->prompt, length[k]};
        t->v->golds += r->gold > 0;
        label[records] = (uint8_t)r->label;
        completions[records++] = count;
        tokens += r->count;
    }
    t->v->records += records;
    if (!reward_model_score(t->model, item, n, score, e)) return false;
    for (int64_t i = 0; i < records; score += completions[i], i++)
        if (s->kind == RECORD_PREFERENCE) tally_ranking(t, score, completions[i]);
        else tally_answer(t, *score, label[i]);
    return true;
}

/* Scores the steps in the model's batch. solution: (solutions) number of steps of each solution. */
static inline bool tally_steps(RewardTally *t, const uint8_t *label, const int32_t *solution, int64_t solutions,
                               Error *e) {
    RewardModel *r = t->model;
    if (!solutions) return true;
    model_forward(&r->model, &r->work, &r->batch, 1.0f, &(ModelOutput){.value = r->value});
    if (!model_sync(&r->model, e)) return false;
    for (int64_t i = 0, k = 0; i < solutions; i++) {
        double total = 1;
        bool right = true;
        for (int64_t end = k + solution[i]; k < end; k++) {
            const double p = sigmoid(r->value[k]);
            total = reward_model_aggregate(r->aggregation, total, p);
            right = right && step_share(label[k]) >= 0.5;
            tally_label(t, p, r->value[k], step_share(label[k]));
        }
        t->solutions += (total > 0.5) == right;
    }
    batch_clear(&r->batch);
    return true;
}

/* Scores records [first, end) of a step shard. Scratch: label, solution: (rows of the model's batch). */
static inline bool tally_solutions(RewardTally *t, const Shard *s, int64_t first, int64_t end, Record *r,
                                   uint8_t *label, int32_t *solution, Error *e) {
    Batch *b = &t->model->batch;
    int64_t n = 0;
    int32_t *at = (int32_t *)xmalloc(((size_t)s->longest + 1) * sizeof *at);
    uint8_t *own = (uint8_t *)xmalloc((size_t)s->longest + 1);
    bool ok = true;
    batch_clear(b);
    for (int64_t i = first; ok && i < end; i++) {
        ok = shard_record(s, i, r, e);
        if (!ok) break;
        Example x = {.prompt = r->tokens, .completion = r->tokens + r->prompt, .prompt_len = r->prompt};
        x.completion_len = r->count - r->prompt;
        if (!example_labels(&x, RECORD_STEP, r, at, own)) {
            ok = error_set(e, "%s: record %lld has a label that is neither good, bad nor a probability", s->name,
                           (long long)i);
            break;
        }
        if (r->prompt < 1 || !x.labels || r->count > t->model->model.config.context) {
            t->v->dropped++;
            continue;
        }
        const BatchSize size = example_size(&x);
        if (!batch_fits(b, size.rows, size.targets, size.segments)) {
            ok = tally_steps(t, label, solution, n, e);
            n = 0;
        }
        if (!ok) break;
        memcpy(label + b->targets, own, (size_t)x.labels);
        example_pack_scores(b, &x);
        solution[n++] = x.labels;
        t->v->records++;
    }
    ok = ok && tally_steps(t, label, solution, n, e);
    free(at), free(own);
    return ok;
}

/* Maximum number of tokens in a chunk of the first `count` records. */
static inline size_t tally_tokens(const Shard *s, int64_t count) {
    size_t most = 0, here = 0;
    for (int64_t i = 0; i < count; i++) {
        here = i % EVALUATION_REWARD_CHUNK ? here + (size_t)shard_length(s, i) : (size_t)shard_length(s, i);
        if (here > most) most = here;
    }
    return most;
}

/* Turns the sums into means; undefined figures become NaN. */
static inline void tally_end(RewardTally *t, RecordKind kind) {
    RewardEvaluation *v = t->v;
    const RewardModelKind model = t->model->note.kind;
    const bool calibrated = kind == RECORD_PREFERENCE ? model != REWARD_MODEL_PRM : model != REWARD_MODEL_BT;
    v->accuracy = calibrated || kind == RECORD_PREFERENCE ? v->accuracy / v->units : NAN;
    v->margin = kind == RECORD_PREFERENCE ? v->margin / v->units : NAN;
    v->auc = kind == RECORD_PREFERENCE ? NAN : rank_auc(t->ranked, t->n);
    v->solutions = kind == RECORD_STEP ? t->solutions / (double)v->records : NAN;
    v->mean = t->total / t->scores;
    v->deviation = sqrt(fmax(t->squares / t->scores - v->mean * v->mean, 0));
    v->log_loss = calibrated ? v->calibration.sum.log_loss / v->calibration.sum.count : NAN;
    v->ece = calibrated ? calibration_error(&v->calibration) : NAN;
    if (!calibrated) v->calibration = calibration_new(v->calibration.low);
}

/* Evaluates the model on the first `count` records of a preference, unpaired or step shard. watch: may stop it early,
 * in which case the results cover the records scored so far; or NULL. Fails on a step shard unless the model is a
 * process model, and if no record fits. */
static inline bool evaluate_rewards(RewardEvaluation *v, RewardModel *model, const Shard *s, int64_t count,
                                    RewardWatch watch, void *context, Error *e) {
    const int64_t chunk = EVALUATION_REWARD_CHUNK;
    /* A chunk has no more completions than tokens, and its records no more than that. */
    const size_t rows = (size_t)model->batch.rows_max, most = tally_tokens(s, count), wide = most > rows ? most : rows;
    *v = (RewardEvaluation){.least = INFINITY, .most = -INFINITY};
    v->calibration = calibration_new(s->kind == RECORD_PREFERENCE ? 0.5 : 0);
    if (s->kind == RECORD_STEP && model->note.kind != REWARD_MODEL_PRM)
        return error_set(e,
                         "%s: steps are scored by a process reward model, and %s is not one; see train_rm --kind prm",
                         s->name, model->name);
    RewardTally t = {.model = model, .v = v};
    Record r = {0};
    RewardItem *item = (RewardItem *)xcalloc(wide, sizeof *item);
    int32_t *tokens = (int32_t *)xcalloc(most, sizeof *tokens);
    int32_t *solution = (int32_t *)xcalloc(wide, sizeof *solution);
    float *score = (float *)xcalloc(wide, sizeof *score);
    uint8_t *label = (uint8_t *)xcalloc(wide, sizeof *label);
    bool ok = true;
    for (int64_t i = 0; ok && i < count; i += chunk) {
        const int64_t end = count - i < chunk ? count : i + chunk;
        ok = s->kind == RECORD_STEP ? tally_solutions(&t, s, i, end, &r, label, solution, e)
                                    : tally_answers(&t, s, i, end, &r, item, tokens, score, label, solution, e);
        if (ok && watch && !watch(context, end, count)) break;
    }
    if (ok && !v->records)
        ok = error_set(e, "%s: no record fits %s's context of %d tokens", s->name, model->name,
                       model->model.config.context);
    if (ok) tally_end(&t, s->kind);
    record_free(&r);
    free(item), free(tokens), free(solution), free(score), free(label), free(t.ranked);
    return ok;
}

#endif
