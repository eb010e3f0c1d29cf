/* beam_search.h - search for a completion under a process reward model: best-of-n, beam search, DVTS, REBASE.
 *
 * A completion is drawn step by step; a step ends with --step-separator, which is part of it. After each step the process
 * reward model scores every unfinished solution, and the solutions of the next step are chosen:
 *
 *   best-of-n   nothing is chosen: n completions are drawn to their ends
 *   beam        the n / m best stay, and each goes on in m copies (Snell et al. 2024, 2408.03314, section 5.2)
 *   dvts        n / m independent trees: of the m solutions of each tree the best one stays and goes on in m copies
 *               (Beeching, Tunstall and Rush 2024)
 *   rebase      solution i goes on in a number of copies that is proportional to exp(score_i / T); all of them together
 *               and those that have ended are n (Wu et al. 2024, 2408.00724, section 3.2)
 *
 * Names and defaults are those of huggingface/search-and-learn. Solutions that end leave the search; with dvts a tree
 * ends when its best solution does, and its m last solutions are its results. The last iteration draws to the end. The
 * score of a solution combines the probabilities of its steps (reward_model_aggregate). With lookahead L it is the score
 * after L further greedy steps, which are then removed.
 *
 * Both models keep their keys and values: no token of a solution is computed twice, the process model runs the new steps
 * only, and a copy of a solution is a copy of its rows of the caches. The prompt is stored once:
 *
 *   cache rows of a prompt   [ prompt without its last token ] n x [ last token of the prompt, solution ]
 *
 * A token is drawn with random_uniform(seed, RANDOM_SEARCH + hash of the solution's path, position). A path is the
 * prompt's id and the numbers of the copies that were taken, so the results do not depend on what else is searched.
 *
 *     BeamSearch x;
 *     BeamOptions o = beam_defaults();
 *     BeamTree tree = {.prompt = prompt, .prompt_len = prompt_len, .id = id};
 *     o.separator = "\n";
 *     if (!beam_new(&x, &o, &model, &model_text, &rm, 1, 16, prompt_max, new_max, &e)) die("%s", e.text);
 *     if (!beam_run(&x, SEARCH_BEAM, 16, &sampling, &tree, 1, &e)) die("%s", e.text);   // tree.result[0 ... results - 1]
 *     beam_tree_free(&tree);
 *     beam_free(&x);
 */
#ifndef LLMC_ROLLOUT_BEAM_SEARCH_H
#define LLMC_ROLLOUT_BEAM_SEARCH_H

#include "../base/error.h"          /* xcalloc, Error, error_set, xmalloc, ... */
#include "../base/options.h"        /* OPTION_INT, OPTION_FLAG, OPTION_TEXT, OPTION_GROUP, ... */
#include "../base/random.h"         /* RANDOM_SEARCH */
#include "../loss/scalar.h"         /* sigmoid */
#include "../model/backend.h"       /* acts_at, Backend, Draw */
#include "../model/batch.h"         /* Batch, Segment, batch_pairs */
#include "../model/config.h"        /* model_kv_width */
#include "../model/decode.h"        /* DecodeStep, decode_rows, model_decode */
#include "../model/model.h"         /* Model, model_sync, model_weight, model_set_longest */
#include "../model/model_text.h"    /* ModelText */
#include "../model/pack.h"          /* batch_clear, batch_target, batch_segment, batch_free, ... */
#include "../model/tensors.h"       /* TENSOR_valueb, TENSOR_valuew */
#include "../model/transformer.h"   /* model_flops */
#include "../model/workspace.h"     /* WORK_slot, WORK_value, Workspace, kv_free, ... */
#include "../reward/reward_model.h" /* RewardModel, reward_model_aggregate, reward_model_ends, ... */
#include "rollout.h"                /* Sampling, completion_free, Completion, sampling_is_stop */
#include "stop_text.h"              /* stop_text_cut, StopTexts */

#define SEARCH_CHOICES "best-of-n|beam|dvts|rebase"
typedef enum { SEARCH_BEST_OF_N, SEARCH_BEAM, SEARCH_DVTS, SEARCH_REBASE, SEARCH_KINDS } BeamKind;

enum { SEARCH_PROBED = 32 }; /* steps after which a separator must have been drawn */

typedef struct BeamOptions {
    const char *methods, *separator;
    int64_t width, iterations, lookahead;
    double balance;
    bool filter, sort;
} BeamOptions;

// clang-format off
#define SEARCH_OPTIONS(o)                                                                                              \
    OPTION_GROUP("Search"),                                                                                            \
    OPTION_TEXT("search",             0, &(o).methods,    "METHOD",                                                    \
                "search by a process reward model, with --num-samples solutions: best-of-n, beam, dvts, rebase, or "   \
                "several of them"),                                                                                    \
    OPTION_INT ("beam-width",         0, &(o).width,      1, 4096, "copies in which a chosen solution goes on"),       \
    OPTION_INT ("num-iterations",     0, &(o).iterations, 1, 1 << 20, "maximum steps; the last one is drawn to the end"), \
    OPTION_INT ("lookahead",          0, &(o).lookahead,  0, 1 << 20,                                                  \
                "further greedy steps after which a step is scored"),                                                  \
    OPTION_TEXT("step-separator",     0, &(o).separator,  "TEXT",                                                      \
                "text that ends a step; the default is the reward model's"),                                           \
    OPTION_FLAG("filter-duplicates",  0, &(o).filter,     "drop equal solutions before the best are chosen"),          \
    OPTION_FLAG("sort-completed",     0, &(o).sort,                                                                    \
                "beam: of more than n solutions that have ended, keep the best instead of the first"),                 \
    OPTION_REAL("rebase-temperature", 0, &(o).balance,    1e-6, 1e6, "rebase: temperature of the scores")
// clang-format on

static inline BeamOptions beam_defaults(void) { return (BeamOptions){.width = 4, .iterations = 40, .balance = 0.1}; }

static inline const char *beam_name(BeamKind kind) {
    static const char *const names[SEARCH_KINDS] = {"best-of-n", "beam", "dvts", "rebase"};
    return names[kind];
}

/* Reads the methods of --search, separated by commas. Returns their number, or 0 with an error. */
static inline int beam_methods(const BeamOptions *o, BeamKind kind[SEARCH_KINDS], Error *e) {
    int n = 0;
    for (const char *at = o->methods;; at++) {
        const int length = (int)strcspn(at, ",");
        char word[32];
        snprintf(word, sizeof word, "%.*s", length, at);
        const int k = option_choice_index(SEARCH_CHOICES, word);
        if (k < 0) return error_set(e, "--search: '%.*s' is none of " SEARCH_CHOICES, length, at);
        for (int i = 0; i < n; i++)
            if (kind[i] == (BeamKind)k) return error_set(e, "--search: %s is given twice", word);
        kind[n++] = (BeamKind)k;
        at += length;
        if (!*at) return n;
    }
}

/* A solution. tokens[0] is the last token of the prompt. */
typedef struct Beam {
    int32_t *tokens, count; /* (count), room for new_max + 2 */
    float *logp;            /* (count) of the drawn tokens */
    uint64_t path;
    struct BeamTree *owner;
    int tree;                     /* dvts: number of the independent tree */
    int area;                     /* first cache row, of both models */
    int32_t cached, prm_cached;   /* tokens in the caches */
    double *p;                    /* (steps) probabilities of the steps */
    int32_t steps, fixed;         /* fixed: of steps that end with the reward model's step token */
    int32_t step;                 /* first token of the step that is drawn */
    bool drawing, finished, over; /* finished: by a stop; over: finished or cut off by a limit */
    double score;
} Beam;

/* A result. */
typedef struct BeamResult {
    Completion completion;
    double score;
} BeamResult;

/* The search for one prompt. The caller sets the first three fields. */
typedef struct BeamTree {
    const int32_t *prompt;
    int32_t prompt_len;
    uint64_t id;
    BeamResult *result; /* (results) freed by beam_tree_free() */
    int results;
    int64_t drawn; /* tokens, those of a lookahead included */
    /* while it is searched */
    Beam **live; /* (lives) */
    int lives, capacity;
    int prompt_row;
    int *area; /* (areas) free ones */
    int areas;
} BeamTree;

/* A model with its cache. */
typedef struct BeamSide {
    const Model *model;
    const Workspace *work;
    KVCache kv;
    double flops;
    int64_t rows;
} BeamSide;

typedef struct BeamSearch {
    BeamOptions o;
    StopTexts separator;
    RewardModel *prm;
    Workspace work;
    BeamSide policy, judge;
    int trees, width, prompt_max, new_max; /* prompts at once; solutions of each, at most */
    Batch batch;
    int32_t *row, *stream, *index, *token; /* (rows), (targets, 2), (targets), (targets) */
    float *logp, *value;                   /* (targets) */
    Beam **target;                         /* (targets) */
    int64_t probed, separated;             /* first steps, and those that ended with the separator */
} BeamSearch;

static inline void beam_node_free(Beam *b) {
    if (!b) return;
    free(b->tokens), free(b->logp), free(b->p);
    free(b);
}

static inline void beam_tree_free(BeamTree *t) {
    for (int i = 0; i < t->results; i++) completion_free(&t->result[i].completion);
    free(t->result);
    t->result = NULL;
    t->results = 0;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static inline void beam_free(BeamSearch *x) {
    if (!x->policy.model) return;
    workspace_free(&x->work, x->policy.model);
    kv_free(&x->policy.kv, x->policy.model);
    kv_free(&x->judge.kv, x->judge.model);
    batch_free(&x->batch);
    free(x->row), free(x->stream), free(x->index), free(x->token), free(x->logp), free(x->value), free(x->target);
    *x = (BeamSearch){0};
}

/* Cache rows of a solution, and of a prompt with all its solutions. */
static inline int beam_area(const BeamSearch *x) { return x->new_max + 2; }
static inline int beam_rows(const BeamSearch *x) { return x->prompt_max + x->width * beam_area(x); }

/* trees: prompts that are searched at once, each with up to `width` solutions of up to new_max tokens. text: of the
 * separator; must outlive x. */
static inline bool beam_new(BeamSearch *x, const BeamOptions *o, const Model *m, const ModelText *text,
                            RewardModel *prm, int trees, int width, int prompt_max, int new_max, Error *e) {
    *x = (BeamSearch){.o = *o,
                      .prm = prm,
                      .separator = {.tokenizer = &text->tokenizer, .text = {o->separator}, .count = 1},
                      .policy = {.model = m, .work = &x->work},
                      .judge = {.model = &prm->model, .work = &prm->work},
                      .trees = trees,
                      .width = width,
                      .prompt_max = prompt_max,
                      .new_max = new_max};
    int rows = trees * width > 512 ? trees * width : 512;
    if (rows < beam_area(x)) rows = beam_area(x);
    if (prm->work.rows < rows && !reward_model_reserve(prm, rows, e)) return false;
    const size_t n = (size_t)rows;
    x->row = (int32_t *)xcalloc(n, sizeof *x->row);
    x->stream = (int32_t *)xcalloc(2 * n, sizeof *x->stream);
    x->index = (int32_t *)xcalloc(n, sizeof *x->index);
    x->token = (int32_t *)xcalloc(n, sizeof *x->token);
    x->logp = (float *)xcalloc(n, sizeof *x->logp);
    x->value = (float *)xcalloc(n, sizeof *x->value);
    x->target = (Beam **)xcalloc(n, sizeof(Beam *));
    x->batch = batch_new(rows, rows, rows);
    model_set_longest(m, prompt_max + new_max);
    if (workspace_new(&x->work, m, rows, rows, rows, false, 0, e) &&
        kv_new(&x->policy.kv, m, trees * beam_rows(x), e) && kv_new(&x->judge.kv, &prm->model, trees * beam_rows(x), e))
        return true;
    beam_free(x);
    return false;
}

/* ---- nodes ----------------------------------------------------------------------------------------------------- */

/* The path of copy k of a solution (a step of SplitMix64: Steele et al. 2014). */
static inline uint64_t beam_path(uint64_t path, uint64_t k) {
    uint64_t z = path + (k + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static inline Beam *beam_node(const BeamSearch *x, BeamTree *t, uint64_t path) {
    Beam *b = (Beam *)xcalloc(1, sizeof *b);
    const size_t room = (size_t)beam_area(x);
    b->tokens = (int32_t *)xmalloc(room * sizeof *b->tokens);
    b->logp = (float *)xcalloc(room, sizeof *b->logp);
    b->p = (double *)xcalloc(room, sizeof *b->p);
    b->owner = t;
    b->tokens[0] = t->prompt[t->prompt_len - 1];
    b->count = 1;
    b->path = path;
    b->area = t->area[--t->areas];
    return b;
}

/* Copies rows of a cache. The two ranges do not overlap. */
static inline void beam_copy_rows(const BeamSide *s, int from, int to, int32_t n) {
    const Backend *b = s->model->backend;
    const int width = model_kv_width(&s->model->config);
    int32_t slot[256];
    for (int32_t first = 0; first < n; first += 256) {
        const int32_t rows = n - first < 256 ? n - first : 256;
        for (int32_t i = 0; i < rows; i++) slot[i] = to + first + i;
        b->upload(s->model->device, work_ints(s->work, WORK_slot), slot, (size_t)rows * sizeof *slot);
        for (int l = 0; l < s->model->config.layers; l++) {
            const size_t layer = (size_t)l * (size_t)s->kv.rows * (size_t)width,
                         at = layer + (size_t)(from + first) * (size_t)width;
            b->kv_store(s->model->device, acts_at(b, s->kv.k, layer), acts_at(b, s->kv.v, layer),
                        acts_at(b, s->kv.k, at), acts_at(b, s->kv.v, at), width, work_ints(s->work, WORK_slot), rows,
                        width);
        }
    }
}

/* A copy of a solution in an area of its own. */
static inline Beam *beam_copy(const BeamSearch *x, BeamTree *t, const Beam *from, uint64_t path) {
    Beam *b = beam_node(x, t, path), own = *b;
    *b = *from;
    b->tokens = own.tokens;
    b->logp = own.logp;
    b->p = own.p;
    b->area = own.area;
    b->path = path;
    memcpy(b->tokens, from->tokens, (size_t)from->count * sizeof *b->tokens);
    memcpy(b->logp, from->logp, (size_t)from->count * sizeof *b->logp);
    memcpy(b->p, from->p, (size_t)from->steps * sizeof *b->p);
    beam_copy_rows(&x->policy, from->area, b->area, b->cached);
    beam_copy_rows(&x->judge, from->area, b->area, b->prm_cached);
    return b;
}

static inline void beam_drop(BeamTree *t, Beam *b) {
    t->area[t->areas++] = b->area;
    beam_node_free(b);
}

/* A solution leaves the search and becomes a result. */
static inline void beam_finish(BeamTree *t, Beam *b) {
    t->result = (BeamResult *)xrealloc(t->result, (size_t)t->results + 1, sizeof *t->result);
    BeamResult *r = &t->result[t->results++];
    const int32_t n = b->count - 1;
    *r = (BeamResult){.score = b->score, .completion = {.count = n, .finished = b->finished}};
    r->completion.tokens = (int32_t *)xmalloc(((size_t)n + 1) * sizeof(int32_t));
    r->completion.logp = (float *)xmalloc(((size_t)n + 1) * sizeof(float));
    memcpy(r->completion.tokens, b->tokens + 1, (size_t)n * sizeof(int32_t));
    memcpy(r->completion.logp, b->logp + 1, (size_t)n * sizeof(float));
    beam_drop(t, b);
}

/* ---- drawing --------------------------------------------------------------------------------------------------- */

/* Adds n tokens of a solution, beginning with token `from`, to the batch. */
static inline void beam_segment(BeamSearch *x, const BeamTree *t, const Beam *b, int32_t from, int32_t n) {
    const int g = batch_segment(&x->batch, b->tokens + from, n, t->prompt_len - 1 + from, -1);
    Segment *s = &x->batch.segment[g];
    s->prefix_start = t->prompt_row;
    s->prefix_len = t->prompt_len - 1;
    s->key_start = b->area;
    s->past = from;
    for (int32_t i = 0; i < n; i++) x->row[s->start + i] = b->area + from + i;
}

static inline void beam_count(BeamSide *s, const Batch *b) {
    s->flops += model_flops(&s->model->config, b->rows, b->targets, batch_pairs(b), 1);
    s->rows += b->rows;
}

/* Stores the prompts, without their last tokens, in the cache of one model. */
static inline bool beam_prompts(BeamSearch *x, BeamSide *side, const BeamTree *t, int trees, Error *e) {
    Batch *b = &x->batch;
    const DecodeStep step = {.slot = x->row};
    for (int i = 0; i < trees; i++)
        for (int32_t at = 0; at < t[i].prompt_len - 1;) {
            batch_clear(b);
            const int32_t left = t[i].prompt_len - 1 - at, n = left < b->rows_max ? left : b->rows_max;
            Segment *s = &b->segment[batch_segment(b, t[i].prompt + at, n, at, -1)];
            s->key_start = t[i].prompt_row;
            s->past = at;
            for (int32_t k = 0; k < n; k++) x->row[k] = t[i].prompt_row + at + k;
            decode_rows(side->model, side->work, &side->kv, b, &step);
            beam_count(side, b);
            at += n;
        }
    return model_sync(side->model, e);
}

/* Appends a drawn token; ends the step if it is over. */
static inline void beam_append(const BeamSearch *x, BeamTree *t, Beam *b, const Sampling *how, int32_t token,
                               float logp, bool to_end) {
    const int32_t room = x->policy.model->config.context - t->prompt_len,
                  most = how->max_new < room ? how->max_new : room;
    b->tokens[b->count] = token;
    b->logp[b->count++] = logp;
    t->drawn++;
    b->finished = sampling_is_stop(how, token) || stop_text_cut(&how->texts, b->tokens + 1, b->count - 1) > 0;
    b->over = b->finished || b->count - 1 >= most;
    b->drawing = !b->over && (to_end || !stop_text_cut(&x->separator, b->tokens + b->step, b->count - b->step));
}

/* Fills the batch with the tokens of solutions that are not in the cache, from node i of tree k on, and makes their last
 * rows targets. Returns false if there are none. */
static inline bool beam_fill(BeamSearch *x, BeamTree *t, int trees, const Sampling *how, int *k, int *i) {
    Batch *b = &x->batch;
    batch_clear(b);
    for (; *k < trees; ++*k, *i = 0)
        for (; *i < t[*k].lives; ++*i) {
            Beam *n = t[*k].live[*i];
            if (!n->drawing) continue;
            const int32_t left = b->rows_max - b->rows, rows = n->count - n->cached, take = rows < left ? rows : left;
            if (!take) return true;
            beam_segment(x, &t[*k], n, n->cached, take);
            n->cached += take;
            if (take < rows) return true;
            const int r = b->targets;
            const uint64_t stream = how->stream + (n->path >> 8);
            batch_target(b, b->rows - 1, 0);
            x->stream[2 * r] = (int32_t)(uint32_t)stream;
            x->stream[2 * r + 1] = (int32_t)(uint32_t)(stream >> 32);
            x->index[r] = t[*k].prompt_len + n->count - 1;
            x->target[r] = n;
        }
    return b->rows > 0;
}

/* Draws the next step of all live solutions, or, with to_end, the rest of each. */
static inline bool beam_step(BeamSearch *x, BeamTree *t, int trees, const Sampling *how, bool to_end, Error *e) {
    const Draw draw = {.temperature = how->temperature,
                       .top_p = how->top_p,
                       .min_p = how->min_p,
                       .top_k = how->top_k,
                       .repetition_penalty = 1,
                       .seed = how->seed};
    const DecodeStep step = {
        .slot = x->row, .stream = x->stream, .index = x->index, .token = x->token, .logp = x->logp};
    bool more = false;
    for (int k = 0; k < trees; k++)
        for (int i = 0; i < t[k].lives; i++) {
            Beam *b = t[k].live[i];
            b->step = b->count;
            b->drawing = !b->over;
            more = more || b->drawing;
        }
    while (more) {
        more = false;
        for (int k = 0, i = 0; beam_fill(x, t, trees, how, &k, &i);) {
            model_decode(x->policy.model, &x->work, &x->policy.kv, &x->batch, draw, &step);
            if (!model_sync(x->policy.model, e)) return false;
            beam_count(&x->policy, &x->batch);
            for (int r = 0; r < x->batch.targets; r++) {
                Beam *b = x->target[r];
                beam_append(x, b->owner, b, how, x->token[r], x->logp[r], to_end);
                more = more || b->drawing;
            }
        }
    }
    return true;
}

/* ---- scoring --------------------------------------------------------------------------------------------------- */

/* The tokens of a solution that the process model reads: without the token that ended it. *append: a step token follows. */
static inline int32_t beam_read(const BeamSearch *x, const Beam *b, bool *append) {
    const int32_t step = x->prm->note.step_token;
    int32_t n = b->count;
    if (step >= 0 && n > 1 && b->tokens[n - 1] != step && reward_model_ends(x->prm, b->tokens[n - 1])) n--;
    *append = step >= 0 && (n == 1 || b->tokens[n - 1] != step);
    return n;
}

/* Forgets the probabilities that the next tokens replace: of an appended step token, and of a step token that is followed by
 * another one. */
static inline void beam_forget(const BeamSearch *x, Beam *b, int32_t n) {
    const int32_t step = x->prm->note.step_token, at = b->prm_cached;
    if (step < 0) b->fixed = 0;
    else if (b->fixed && at < n && b->tokens[at] == step && at > 1 && b->tokens[at - 1] == step) b->fixed--;
    b->steps = b->fixed;
}

/* Adds the new tokens of a solution to the batch, with the ends of its steps as targets. Returns false if there is too
 * little room. */
static inline bool beam_read_into(BeamSearch *x, const BeamTree *t, Beam *b) {
    Batch *batch = &x->batch;
    const int32_t step = x->prm->note.step_token;
    bool append;
    const int32_t n = beam_read(x, b, &append), from = b->prm_cached, rows = n + append - from;
    if (rows < 1) return true;
    if (batch->rows + rows > batch->rows_max) return false;
    beam_forget(x, b, n);
    const int32_t held = b->tokens[n];
    if (append) b->tokens[n] = step;
    const int32_t start = batch->rows, before = batch->targets;
    beam_segment(x, t, b, from, rows);
    for (int32_t i = from; i < n; i++)
        if (step >= 0 && i > 0 && b->tokens[i] == step && (i + 1 == n || b->tokens[i + 1] != step)) {
            batch_target(batch, start + i - from, 0);
            b->fixed++;
        }
    if (append || step < 0) batch_target(batch, start + rows - 1, 0);
    for (int32_t r = before; r < batch->targets; r++) x->target[r] = b;
    b->tokens[n] = held;
    b->prm_cached = n;
    return true;
}

/* Runs the batch on the process model and appends the probabilities to the solutions. */
static inline bool beam_judge(BeamSearch *x, Error *e) {
    const Model *m = x->judge.model;
    const Backend *b = m->backend;
    const DecodeStep step = {.slot = x->row};
    const int R = x->batch.targets;
    if (!x->batch.rows) return true;
    decode_rows(m, x->judge.work, &x->judge.kv, &x->batch, &step);
    if (R) {
        b->value_forward(m->device, work_floats(x->judge.work, WORK_value, 0), work_acts(x->judge.work, WORK_h, 0),
                         model_weight(m, TENSOR_valuew, 0), model_weight(m, TENSOR_valueb, 0), R, m->config.width);
        b->download(m->device, x->value, work_floats(x->judge.work, WORK_value, 0), (size_t)R * sizeof(float));
    }
    if (!model_sync(m, e)) return false;
    beam_count(&x->judge, &x->batch);
    for (int r = 0; r < R; r++) x->target[r]->p[x->target[r]->steps++] = sigmoid(x->value[r]);
    batch_clear(&x->batch);
    return true;
}

static inline bool beam_equal(const Beam *a, const Beam *b) {
    return a->count == b->count && !memcmp(a->tokens, b->tokens, (size_t)a->count * sizeof *a->tokens);
}

/* Scores all live solutions. Equal ones get equal scores. */
static inline bool beam_score(BeamSearch *x, BeamTree *t, int trees, Error *e) {
    batch_clear(&x->batch);
    for (int k = 0; k < trees; k++)
        for (int i = 0; i < t[k].lives; i++) {
            if (beam_read_into(x, &t[k], t[k].live[i])) continue;
            if (!beam_judge(x, e)) return false;
            beam_read_into(x, &t[k], t[k].live[i]); /* an empty batch has room for any solution */
        }
    if (!beam_judge(x, e)) return false;
    for (int k = 0; k < trees; k++)
        for (int i = 0; i < t[k].lives; i++) {
            Beam *b = t[k].live[i];
            b->score = 1;
            for (int32_t s = 0; s < b->steps; s++)
                b->score = reward_model_aggregate(x->prm->aggregation, b->score, b->p[s]);
            for (int j = 0; j < i; j++) /* so that rounding does not choose between them */
                if (beam_equal(t[k].live[j], b)) b->score = t[k].live[j]->score;
        }
    return true;
}

/* Replaces the scores by those after further greedy steps, and removes these again. */
static inline bool beam_look(BeamSearch *x, BeamTree *t, int trees, const Sampling *how, Error *e) {
    Sampling greedy = *how;
    int nodes = 0, at = 0;
    greedy.temperature = 0;
    for (int k = 0; k < trees; k++) nodes += t[k].lives;
    Beam *kept = (Beam *)xcalloc((size_t)nodes + 1, sizeof *kept);
    double *last = (double *)xcalloc((size_t)nodes + 1, sizeof *last);
    for (int k = 0; k < trees; k++)
        for (int i = 0; i < t[k].lives; i++, at++) {
            kept[at] = *t[k].live[i];
            last[at] = kept[at].steps ? kept[at].p[kept[at].steps - 1] : 0;
        }
    bool ok = true;
    for (int64_t i = 0; ok && i < x->o.lookahead; i++) ok = beam_step(x, t, trees, &greedy, false, e);
    ok = ok && beam_score(x, t, trees, e);
    at = 0;
    for (int k = 0; k < trees; k++)
        for (int i = 0; i < t[k].lives; i++, at++) {
            Beam *b = t[k].live[i];
            const double score = b->score;
            *b = kept[at];
            b->score = score;
            if (b->steps) b->p[b->steps - 1] = last[at];
        }
    free(kept), free(last);
    return ok;
}

/* ---- choosing -------------------------------------------------------------------------------------------------- */

/* Makes the live solutions those that copies[] says: (lives) the number of copies of each, 0: it is dropped. */
static inline void beam_branch(const BeamSearch *x, BeamTree *t, const int *copies) {
    int all = 0, before = t->lives;
    for (int i = 0; i < before; i++) {
        all += copies[i];
        if (copies[i]) continue;
        beam_drop(t, t->live[i]);
        t->live[i] = NULL;
    }
    Beam **next = (Beam **)xcalloc((size_t)all + 1, sizeof(Beam *));
    t->lives = 0;
    for (int i = 0; i < before; i++) {
        Beam *b = t->live[i];
        const uint64_t path = b ? b->path : 0;
        for (int k = 0; b && k < copies[i]; k++)
            next[t->lives++] = k ? beam_copy(x, t, b, beam_path(path, (uint64_t)k)) : b;
        if (b) b->path = beam_path(path, 0);
    }
    free(t->live);
    t->live = next;
}

/* Ends solution i of a tree of the search. */
static inline void beam_end(BeamTree *t, int i) {
    beam_finish(t, t->live[i]);
    memmove(t->live + i, t->live + i + 1, (size_t)(t->lives - i - 1) * sizeof *t->live);
    t->lives--;
}

static inline void beam_end_over(BeamTree *t) {
    for (int i = 0; i < t->lives;)
        if (t->live[i]->over) beam_end(t, i);
        else i++;
}

/* Drops solutions that are equal to an earlier one. */
static inline void beam_filter(BeamTree *t) {
    for (int i = 0; i < t->lives; i++)
        for (int k = t->lives - 1; k > i; k--) {
            if (!beam_equal(t->live[i], t->live[k])) continue;
            beam_drop(t, t->live[k]);
            memmove(t->live + k, t->live + k + 1, (size_t)(t->lives - k - 1) * sizeof *t->live);
            t->lives--;
        }
}

/* The live solution with the highest score among those of copies[i] == 0, of one tree of dvts (-1: of all); the first one
 * of equal ones. -1: none. */
static inline int beam_best(const BeamTree *t, const int *copies, int tree) {
    int best = -1;
    for (int i = 0; i < t->lives; i++) {
        const Beam *b = t->live[i];
        if (copies[i] || (tree >= 0 && b->tree != tree)) continue;
        if (best < 0 || b->score > t->live[best]->score) best = i;
    }
    return best;
}

static inline void beam_choose_beam(const BeamSearch *x, BeamTree *t, int n) {
    int *copies = (int *)xcalloc((size_t)t->lives + 1, sizeof *copies);
    for (int kept = 0, best; kept < n / x->o.width && (best = beam_best(t, copies, -1)) >= 0; kept++)
        copies[best] = (int)x->o.width;
    beam_branch(x, t, copies);
    free(copies);
}

/* last: of the last iteration, all trees end. */
static inline void beam_choose_dvts(const BeamSearch *x, BeamTree *t, int n, bool last) {
    int *copies = (int *)xcalloc((size_t)t->lives + 1, sizeof *copies);
    for (int tree = 0; tree < n / x->o.width; tree++) {
        const int best = beam_best(t, copies, tree);
        if (best < 0) continue;
        if (!last && !t->live[best]->over) {
            copies[best] = (int)x->o.width;
            continue;
        }
        for (int i = 0; i < t->lives;) {
            if (t->live[i]->tree != tree) {
                i++;
                continue;
            }
            beam_end(t, i);
            memmove(copies + i, copies + i + 1, (size_t)(t->lives - i) * sizeof *copies);
        }
    }
    beam_branch(x, t, copies);
    free(copies);
}

/* Distributes n - (solutions that have ended) copies by exp(score / T): whole parts first, then the largest remainders. */
static inline void beam_choose_rebase(const BeamSearch *x, BeamTree *t, int n) {
    int *copies = (int *)xcalloc((size_t)t->lives + 1, sizeof *copies), left = n - t->results;
    double *share = (double *)xcalloc((size_t)t->lives + 1, sizeof *share), sum = 0, top = -INFINITY;
    for (int i = 0; i < t->lives; i++) top = fmax(top, t->live[i]->score);
    for (int i = 0; i < t->lives; i++) sum += share[i] = exp((t->live[i]->score - top) / x->o.balance);
    const int all = left;
    for (int i = 0; i < t->lives; i++) {
        share[i] *= all / sum;
        copies[i] = (int)share[i];
        share[i] -= copies[i];
        left -= copies[i];
    }
    for (; left > 0; left--) {
        int best = 0;
        for (int i = 1; i < t->lives; i++)
            if (share[i] > share[best]) best = i;
        copies[best]++;
        share[best] = -1;
    }
    beam_branch(x, t, copies);
    free(copies), free(share);
}

static inline void beam_choose(const BeamSearch *x, BeamKind kind, BeamTree *t, int n, bool last) {
    if (kind == SEARCH_DVTS) {
        beam_choose_dvts(x, t, n, last);
        return;
    }
    beam_end_over(t);
    if (x->o.filter) beam_filter(t);
    if (!t->lives) return;
    if (kind == SEARCH_REBASE) beam_choose_rebase(x, t, n);
    else beam_choose_beam(x, t, n);
}

/* ---- the run --------------------------------------------------------------------------------------------------- */

/* Keeps n results: the first ones, or the best. */
static inline void beam_keep(const BeamSearch *x, BeamTree *t, int n) {
    for (int i = 0; x->o.sort && i < t->results && i < n; i++)
        for (int k = t->results - 1; k > i; k--)
            if (t->result[k].score > t->result[k - 1].score) {
                const BeamResult held = t->result[k];
                t->result[k] = t->result[k - 1];
                t->result[k - 1] = held;
            }
    while (t->results > n) completion_free(&t->result[--t->results].completion);
}

static inline void beam_begin(const BeamSearch *x, BeamTree *t, int number, int n) {
    const int first = number * beam_rows(x);
    t->prompt_row = first;
    t->area = (int *)xcalloc((size_t)x->width, sizeof *t->area);
    t->areas = 0;
    for (int i = x->width - 1; i >= 0; i--) t->area[t->areas++] = first + x->prompt_max + i * beam_area(x);
    t->live = (Beam **)xcalloc((size_t)n + 1, sizeof(Beam *));
    t->lives = t->results = 0;
    t->result = NULL;
    t->drawn = 0;
    for (int i = 0; i < n; i++) {
        Beam *b = beam_node(x, t, beam_path(beam_path(t->id, 0), (uint64_t)i));
        b->tree = i / (int)x->o.width;
        t->live[t->lives++] = b;
    }
}

/* Counts the first steps that ended with the separator. */
static inline bool beam_probe(BeamSearch *x, const BeamTree *t, int trees, Error *e) {
    for (int k = 0; k < trees; k++)
        for (int i = 0; i < t[k].lives; i++) {
            const Beam *b = t[k].live[i];
            x->probed++;
            x->separated += stop_text_cut(&x->separator, b->tokens + b->step, b->count - b->step) > 0;
        }
    return x->separated || x->probed < SEARCH_PROBED ||
           error_set(e, "--step-separator: none of the first %lld samples has one, so there are no steps to score",
                     (long long)x->probed);
}

/* Searches for completions of some prompts, at most x->trees, with n solutions each. how: its repetition penalty must be 1.
 * Fills in the results of the trees. */
static inline bool beam_run(BeamSearch *x, BeamKind kind, int n, const Sampling *how, BeamTree *t, int trees,
                            Error *e) {
    const int64_t iterations = kind == SEARCH_BEST_OF_N ? 1 : x->o.iterations;
    Sampling s = *how;
    s.stream = RANDOM_SEARCH;
    for (int k = 0; k < trees; k++) beam_begin(x, &t[k], k, n);
    bool ok = beam_prompts(x, &x->policy, t, trees, e) && beam_prompts(x, &x->judge, t, trees, e), more = true;
    for (int64_t i = 0; ok && more && i < iterations; i++) {
        const bool last = i + 1 == iterations;
        ok = beam_step(x, t, trees, &s, last, e) && (i || last || beam_probe(x, t, trees, e)) &&
             beam_score(x, t, trees, e) && (last || !x->o.lookahead || beam_look(x, t, trees, &s, e));
        more = false;
        for (int k = 0; ok && k < trees; k++) {
            beam_choose(x, kind, &t[k], n, last);
            more = more || t[k].lives;
        }
    }
    for (int k = 0; k < trees; k++) {
        while (t[k].lives) beam_drop(&t[k], t[k].live[--t[k].lives]);
        free(t[k].live), free(t[k].area);
        t[k].live = NULL;
        t[k].area = NULL;
        beam_keep(x, &t[k], n);
    }
    return ok;
}

#endif
