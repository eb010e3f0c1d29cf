/* teacher.h - the teacher of distillation: a second model whose distributions of the next token the model learns.
 *
 * The loss is the mean over targets of the divergence of --divergence (model/backend.h), over the whole vocabulary, between
 * the student's distribution and the teacher's; a trainer may weight it and add a loss of its own. The teacher's tokens must be the student's, and it must have
 * a position for every token of the run. Its weights are frozen: a resumed run must name the same file.
 *
 * With --teacher-log-probs, the teacher's likeliest tokens at the targets of the data are computed once into a file
 * (teacher_lists.h), or read from one that exists, and no teacher is in memory while the student learns. The divergence is then
 * over these tokens and the rest as one outcome.
 *
 *     Teacher t;
 *     TeacherStats stats = {0};
 *     TeacherOptions o = teacher_options(TOKEN_FORWARD_KL);
 *     teacher_open(&t, &trainer, &o, longest);                     // before trainer_announce()
 *     bytes += teacher_bytes(&t, rows);
 *     teacher_begin(&t, rows);                                     // after it
 *     teacher_weigh(&t, 0, batch.targets, 1 / N);
 *     teacher_train(&t, &work, &batch, 1.0f, dlogp, &out);         // forward and backward pass
 *     loss += teacher_add(&t, 0, batch.targets, out.logp, out.argmax, &stats) / N;
 *     teacher_close(&t);
 */
#ifndef LLMC_TRAIN_TEACHER_H
#define LLMC_TRAIN_TEACHER_H

#include "../base/clock.h"            /* clock_seconds */
#include "../base/error.h"            /* die, Error, usage_error, warn, ... */
#include "../base/options.h"          /* option_given, OPTION_REAL, OPTION_TEXT, OPTION_CHOICE, ... */
#include "../model/backend.h"         /* TOKEN_JSD, TokenDivergenceKind, TOKEN_FORWARD_KL, TOKEN_REVERSE_KL, ... */
#include "../model/batch.h"           /* Batch */
#include "../model/config.h"          /* ModelConfig */
#include "../model/divergence.h"      /* DivergenceOutput, ModelDivergence, TOKEN_DIVERGENCE_CHOICES, ... */
#include "../model/model.h"           /* Model, model_free, model_held_bytes, model_set_longest */
#include "../model/model_file.h"      /* model_load_as */
#include "../model/model_fits.h"      /* FitSide, model_fits, fit_model, model_fits_policy */
#include "../model/model_load.h"      /* model_file_free, model_weights_hash, ModelFile, ModelLoad */
#include "../model/transformer.h"     /* ModelOutput */
#include "../model/workspace.h"       /* Workspace, workspace_free, workspace_bytes, workspace_new */
#include "../records/shard.h"         /* Shard */
#include "../records/teacher_table.h" /* TeacherTable, TEACHER_TABLES, TeacherRow, teacher_row_bytes, ... */
#include "../report/metrics.h"        /* metrics_set, Metrics */
#include "teacher_lists.h"            /* TeacherTargets, teacher_lists_write, teacher_targets_close, ... */
#include "trainer.h"                  /* Trainer, trainer_count_flops, trainer_file, trainer_side */

typedef struct TeacherOptions {
    const char *path, *table; /* --teacher, --teacher-log-probs */
    int kind;                 /* a TokenDivergenceKind */
    double beta, temperature;
    int64_t top_k;
} TeacherOptions;

/* kind: the default of --divergence. */
static inline TeacherOptions teacher_options(TokenDivergenceKind kind) {
    return (TeacherOptions){.kind = kind, .beta = 0.5, .temperature = 1, .top_k = 64};
}

/* Whether there is a teacher, and its name for messages. */
static inline bool teacher_given(const TeacherOptions *o) { return o->path || o->table; }
static inline const char *teacher_name(const TeacherOptions *o) { return o->path ? o->path : o->table; }

// clang-format off
#define TEACHER_OPTIONS(o)                                                                                             \
    OPTION_GROUP("Distillation"),                                                                                      \
    OPTION_TEXT  ("teacher",             0, &(o).path,        "FILE",                                                  \
                  "model with the same tokens whose distributions are learned"),                                       \
    OPTION_CHOICE("divergence",          0, &(o).kind,        TOKEN_DIVERGENCE_CHOICES,                                \
                  "of the student's distribution from the teacher's, at each target, over the whole vocabulary"),      \
    OPTION_REAL  ("distill-beta",        0, &(o).beta,        0, 1,                                                    \
                  "jsd: weight of the teacher in the mixture; skew_*: part of the first distribution in the second "   \
                  "(default: 0.1)"),                                                                                   \
    OPTION_REAL  ("distill-temperature", 0, &(o).temperature, 0.01, 100,                                               \
                  "divides both models' logits; the loss is not multiplied by its square")

/* Of a trainer whose targets are those of the data. */
#define TEACHER_TABLE_OPTIONS(o)                                                                                       \
    OPTION_TEXT  ("teacher-log-probs",   0, &(o).table,       "FILE",                                                  \
                  "compute the teacher's likeliest tokens into this file once, or read them from it if it exists, also "\
                  "without --teacher; for --divergence forward_kl and jsd"),                                           \
    OPTION_INT   ("teacher-top-k",       0, &(o).top_k,       1, 1 << 22,                                              \
                  "likeliest tokens at each target in the file of --teacher-log-probs (at most the vocabulary)")
// clang-format on

/* Rejects options without effect and values without a meaning, and sets the default that depends on the divergence. */
static inline void teacher_check(TeacherOptions *o, const Option *table) {
    const bool skew = o->kind == TOKEN_SKEW_FORWARD || o->kind == TOKEN_SKEW_REVERSE;
    const bool on = teacher_given(o);
    const OptionUse use[] = {
        {&o->kind, on, "used only with --teacher"},
        {&o->beta, on && (skew || o->kind == TOKEN_JSD), "used only by --divergence jsd and skew_*"},
        {&o->temperature, on, "used only with --teacher"},
        {&o->top_k, o->table != NULL, "used only with --teacher-log-probs"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
    if (skew && !option_given(&o->beta)) o->beta = 0.1;
    if (o->kind == TOKEN_JSD && (o->beta <= 0 || o->beta >= 1))
        usage_error("--distill-beta %g: jsd is 0 there for all distributions; use --divergence %s", o->beta,
                    o->beta <= 0 ? "forward_kl" : "reverse_kl");
    if (skew && o->beta >= 1)
        usage_error("--distill-beta %g: the divergence is 0 there for all distributions", o->beta);
    if (o->path && !strcmp(o->path, "-")) usage_error("--teacher: give the teacher's file, not standard input");
    if (o->table && !strcmp(o->table, "-")) usage_error("--teacher-log-probs: must be a file");
    if (o->table && o->kind != TOKEN_FORWARD_KL && o->kind != TOKEN_JSD)
        usage_error(
            "--teacher-log-probs: has the teacher's likeliest tokens only, for --divergence forward_kl and jsd; the "
            "others need the student's likeliest tokens as well");
}

/* Totals over targets. Doubles only, so that ranks can add them. */
typedef struct TeacherStats {
    double value, forward_kl, reverse_kl, logp, own_logp, entropy, agreement, listed, targets;
} TeacherStats;

enum { TEACHER_SETS = TEACHER_TABLES }; /* training and validation records */

typedef struct Teacher {
    Trainer *t;
    const TeacherOptions *o;
    bool on;  /* there is a teacher */
    bool own; /* its model is `model`, and not one of the trainer's */
    Model model;
    ModelFile file;
    Workspace work;
    ModelDivergence apart;
    DivergenceOutput out; /* of the micro-batch */
    float *weight;        /* (targets of a micro-batch) */
    TeacherTable table;   /* with --teacher-log-probs, once it is computed */
    TeacherLists lists;   /* of the micro-batch */
    TeacherTargets set[TEACHER_SETS];
    int sets, rows_of[TEACHER_SETS]; /* number of sets; the table of each */
} Teacher;

/* Checks that the two models' tokens are the same. Models whose tokenizers are may have different rows of padding in their
 * vocabularies; without tokenizers, the vocabularies must be equal. */
static inline bool teacher_fits(const FitSide *student, const FitSide *teacher, Error *note, Error *e) {
    FitSide a = *student, b = *teacher;
    Error why;
    if (a.tokenizer && b.tokenizer) a.vocab = b.vocab = a.vocab < b.vocab ? a.vocab : b.vocab;
    if (!model_fits(&b, &a, 0, note, &why) || !model_fits(&a, &b, 0, NULL, &why))
        return error_set(e,
                         "%s; the teacher's tokens must be the student's: distil through text, with generate and then "
                         "train_sft",
                         why.text);
    return true;
}

/* Whether the teacher is the model in training, with its current weights. */
static inline bool teacher_is_self(const TeacherOptions *o) { return o->path && !strcmp(o->path, "self"); }

/* Sets how the teacher's distributions are compared. */
static inline void teacher_compare(Teacher *r, const Model *m) {
    r->on = true;
    r->t->teacher = &m->config;
    r->apart = (ModelDivergence){.teacher = m,
                                 .work = &r->work,
                                 .kind = (TokenDivergenceKind)r->o->kind,
                                 .temperature = (float)r->o->temperature,
                                 .beta = (float)r->o->beta};
}

/* Ends the program unless the table's tokens and settings are those of the run. */
static inline void teacher_check_table(const Teacher *r) {
    Error e, note = {0};
    const TeacherTable *f = &r->table;
    const ModelConfig *c = &r->t->model.config;
    const FitSide student = trainer_side(r->t), side = {.name = f->name,
                                                        .vocab = f->vocab,
                                                        .context = c->context,
                                                        .tokenizer = f->tokenizer_bytes ? f->tokenizer : NULL,
                                                        .tokenizer_bytes = f->tokenizer_bytes};
    if (!teacher_fits(&student, &side, &note, &e)) die("%s", e.text);
    if (f->vocab > c->vocab) die("%s: its vocabulary of %d is larger than the model's %d", f->name, f->vocab, c->vocab);
    if (note.text[0] && !r->t->dist.rank) warn("%s", note.text);
    if (f->temperature != (float)r->o->temperature)
        die("%s: it was computed with --distill-temperature %g, not %g; remove it to recompute it", f->name,
            (double)f->temperature, r->o->temperature);
    if (option_given(&r->o->top_k) && f->count != r->o->top_k)
        die("%s: it was computed with --teacher-top-k %d, not %lld; remove it to recompute it", f->name, f->count,
            (long long)r->o->top_k);
}

/* Opens the table of --teacher-log-probs and compares by its lists. */
static inline void teacher_open_table(Teacher *r) {
    Error e;
    if (!teacher_table_open(&r->table, r->o->table, &e)) die("%s", e.text);
    teacher_check_table(r);
    trainer_file(r->t, "teacher-log-probs", r->o->table, r->table.hash);
}

/* Loads the model of --teacher. */
static inline void teacher_load(Teacher *r, int32_t longest) {
    Error e;
    Trainer *t = r->t;
    const TeacherOptions *o = r->o;
    const ModelLoad how = {.seed = (uint64_t)t->o->seed};
    if (!model_load_as(&r->model, &r->file, o->path, &how, t->backend, t->device, NULL, &e)) die("%s", e.text);
    if (!model_fits_policy(&r->file, o->path, &e)) die("%s", e.text);
    Error note = {0};
    const FitSide student = trainer_side(t), teacher = fit_model(o->path, &r->model.config, &r->file);
    if (!teacher_fits(&student, &teacher, &note, &e)) die("%s", e.text);
    if (note.text[0] && !t->dist.rank) warn("%s", note.text);
    if (longest > r->model.config.context)
        die("%s: the teacher's context of %d is shorter than the longest sequence, %d", o->path,
            r->model.config.context, longest);
    if (r->file.hash == t->file.hash && !t->o->resume && !t->dist.rank)
        warn("--teacher %s: it is the model itself: their divergence is 0 until the model has changed", o->path);
    model_set_longest(&r->model, longest);
    trainer_file(t, "teacher", o->path, r->file.hash);
    r->own = true;
}

/* Frees the model and its activations. */
static inline void teacher_unload(Teacher *r) {
    if (!r->own) return;
    workspace_free(&r->work, &r->model);
    model_free(&r->model);
    model_file_free(&r->file);
    r->own = false;
}

/* Loads the teacher, or opens its table. longest: positions of the longest sequence. Call it after trainer_open() and before
 * trainer_announce(). Errors end the program. Collective. */
static inline void teacher_open(Teacher *r, Trainer *t, const TeacherOptions *o, int32_t longest) {
    *r = (Teacher){.t = t, .o = o};
    if (teacher_is_self(o)) teacher_compare(r, &t->model);
    if (!teacher_given(o) || teacher_is_self(o)) return;
    const bool there = o->table && !access(o->table, F_OK);
    if (!o->path && !there) die("%s: there is no such file; --teacher computes it", o->table);
    if (o->table && !there && t->dist.ranks > 1)
        usage_error("--teacher-log-probs: %s is computed on one rank only; there is no such file yet", o->table);
    if (o->path) teacher_load(r, longest);
    if (!there) {
        teacher_compare(r, &r->model);
        return;
    }
    teacher_open_table(r);
    if (o->path && model_weights_hash(&r->model) != r->table.model)
        die("%s: it was computed with another teacher than %s; remove it to recompute it", o->table, o->path);
    teacher_unload(r);
    teacher_compare(r, &t->model); /* whose logits the lists are extended to */
}

/* Finds the rows of set k in the table. */
static inline void teacher_find_rows(Teacher *r, int k) {
    const TeacherTargets *s = &r->set[k];
    r->rows_of[k] = teacher_table_find(&r->table, s->data, (uint64_t)s->at[s->shard->count]);
    if (r->rows_of[k] < 0)
        die("%s: it was computed for other records than those of %s, or with a different --max-length or "
            "--completion-only-loss; remove it to recompute it",
            r->o->table, s->shard->name);
}

/* Adds a set of records whose targets the run has; the first one is that of the training records. Call it before
 * teacher_begin(). */
static inline void teacher_set(Teacher *r, const Shard *s, int32_t max_length, bool masked) {
    Error e;
    if (!r->o || !r->o->table) return;
    if (!teacher_targets_open(&r->set[r->sets], s, max_length, masked, &e)) die("%s", e.text);
    if (r->table.name) teacher_find_rows(r, r->sets);
    r->sets++;
}

/* The vocabulary of a table that is computed: tokens that only one model has are padding. */
static inline int32_t teacher_vocab(const Teacher *r) {
    const int32_t own = r->t->model.config.vocab, other = r->model.config.vocab;
    return own < other ? own : other;
}

/* Tokens of a list. */
static inline int32_t teacher_listed(const Teacher *r) {
    if (r->table.name) return r->table.count;
    const int32_t vocab = teacher_vocab(r);
    if (option_given(&r->o->top_k) && r->o->top_k > vocab)
        usage_error("--teacher-top-k: the vocabulary has %d tokens", vocab);
    return r->o->top_k < vocab ? (int32_t)r->o->top_k : vocab;
}

/* Memory in bytes, for trainer_announce(): activations, and the weights on a GPU or their packed copy on a CPU. */
static inline size_t teacher_bytes(const Teacher *r, int rows) {
    if (!r->on) return 0;
    const Model *m = r->apart.teacher;
    size_t bytes = 0;
    if (r->o && r->o->table) bytes += teacher_lists_bytes(rows, teacher_listed(r));
    if (r->own) bytes += model_held_bytes(m);
    if (r->own || !r->table.name) bytes += workspace_bytes(&m->config, m->backend, rows, rows, rows, false, 0);
    return bytes;
}

/* Allocates the results. */
static inline void teacher_results(Teacher *r, int rows) {
    const size_t n = (size_t)rows;
    float **all[] = {&r->out.value, &r->out.forward_kl, &r->out.reverse_kl, &r->out.logp, &r->out.entropy, &r->weight};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i] = (float *)xcalloc(n, sizeof(float));
    r->out.argmax = (int32_t *)xcalloc(n, sizeof *r->out.argmax);
}

/* Allocates activations and results. rows: of the largest micro-batch. */
static inline void teacher_begin(Teacher *r, int rows) {
    Error e;
    if (!r->on) return;
    teacher_results(r, rows);
    if (!r->table.name && !workspace_new(&r->work, r->apart.teacher, rows, rows, rows, false, 0, &e)) die("%s", e.text);
}

/* Computes the table with the teacher, which is then freed. b: a batch to use. */
static inline void teacher_compute_table(Teacher *r, Batch *b) {
    Error e;
    TeacherTargets *sets[TEACHER_SETS];
    const double start = clock_seconds();
    const TeacherTable about = {.name = (char *)r->o->path,
                                .vocab = teacher_vocab(r),
                                .count = teacher_listed(r),
                                .temperature = (float)r->o->temperature,
                                .model = model_weights_hash(&r->model),
                                .tokenizer = r->file.tokenizer,
                                .tokenizer_bytes = r->file.tokenizer_bytes,
                                .tables = r->sets};
    for (int k = 0; k < r->sets; k++) sets[k] = &r->set[k];
    if (!teacher_lists_write(r->o->table, &about, &r->model, &r->work, b, sets, r->sets, &e)) die("%s", e.text);
    teacher_unload(r);
    teacher_open_table(r);
    fprintf(stderr, "teacher's log-probabilities computed in %.1f s\n", clock_seconds() - start);
}

/* Prints what the table holds, and keeps its teacher in the lineage. */
static inline void teacher_announce_table(Teacher *r) {
    const TeacherTable *f = &r->table;
    char hash[20];
    uint64_t targets = 0;
    json_t *lineage = r->t->file.lineage, *stage = json_array_get(lineage, json_array_size(lineage) - 1);
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)f->model);
    json_object_set_new(stage, "teacher", json_pack("{s:s,s:i}", "weights", hash, "top_k", (int)f->count));
    for (int k = 0; k < r->sets; k++) targets += f->table[r->rows_of[k]].targets;
    if (!r->t->dist.rank)
        fprintf(
            stderr,
            "teacher %s: the %d likeliest of %d tokens at %llu targets, %.1f MB; the divergence is over these and the "
            "rest as one%s\n",
            f->name, f->count, f->vocab, (unsigned long long)targets,
            1e-6 * (double)targets * (double)teacher_row_bytes(f->vocab, f->count),
            f->count < f->vocab ? ", a lower bound of that over all tokens" : "");
}

/* With --teacher-log-probs: computes the table if it does not exist, and compares by its lists from now on. b: a batch to use.
 * Call it after teacher_begin(), before the first batch. */
static inline void teacher_take_table(Teacher *r, Batch *b) {
    Error e;
    if (!r->o || !r->o->table) return;
    if (!r->table.name) {
        teacher_compute_table(r, b);
        for (int k = 0; k < r->sets; k++) teacher_find_rows(r, k);
    }
    if (!teacher_lists_new(&r->lists, &r->t->model, b->rows_max, r->table.count, r->table.vocab, &e)) die("%s", e.text);
    r->apart.teacher = NULL;
    r->apart.work = NULL;
    r->apart.lists = &r->lists;
    teacher_announce_table(r);
}

/* Takes the lists of record i of a set for the targets of the micro-batch from `at` on. Returns the number of targets. */
static inline int32_t teacher_take_lists(Teacher *r, int set, int64_t i, int32_t at) {
    Error e;
    const TeacherTargets *s = &r->set[set];
    const int32_t n = (int32_t)(s->at[i + 1] - s->at[i]);
    const size_t count = (size_t)r->lists.count;
    for (int32_t k = 0; k < n; k++) {
        TeacherRow row;
        const size_t to = (size_t)(at + k);
        float *logp = r->lists.logp + to * count;
        int32_t *token = r->lists.token + to * count;
        if (!teacher_table_row(&r->table, r->rows_of[set], (uint64_t)(s->at[i] + k), &row, logp, token, &e))
            die("%s", e.text);
        r->lists.rest[to] = row.rest;
        r->out.logp[to] = row.logp;
        r->out.entropy[to] = row.entropy;
        r->out.argmax[to] = token[0];
    }
    return n;
}

/* Takes a model of the trainer's with its workspace as the teacher, by KL(student || teacher). */
static inline void teacher_wrap(Teacher *r, Trainer *t, const Model *m, const Workspace *w, int rows,
                                float temperature) {
    *r = (Teacher){.t = t, .on = true};
    r->apart = (ModelDivergence){.teacher = m, .work = w, .kind = TOKEN_REVERSE_KL, .temperature = temperature};
    teacher_results(r, rows);
}

static inline void teacher_close(Teacher *r) {
    if (!r->on) return;
    if (r->o && r->apart.teacher) workspace_free(&r->work, r->apart.teacher);
    if (r->own) model_free(&r->model);
    model_file_free(&r->file);
    for (int k = 0; k < r->sets; k++) teacher_targets_close(&r->set[k]);
    teacher_lists_free(&r->lists, &r->t->model);
    teacher_table_close(&r->table);
    free(r->out.value), free(r->out.forward_kl), free(r->out.reverse_kl), free(r->out.logp), free(r->out.entropy);
    free(r->out.argmax), free(r->weight);
}

/* What is computed of a batch: r->out, without what lists have already. */
static inline DivergenceOutput teacher_wanted(const Teacher *r) {
    const DivergenceOutput *o = &r->out;
    if (!r->apart.lists) return *o;
    return (DivergenceOutput){.value = o->value, .forward_kl = o->forward_kl, .reverse_kl = o->reverse_kl};
}

/* Forward pass of both models on a batch: what `out` requests of the student, at a temperature of its own, and r->out.
 * read: the batch that the teacher reads, or NULL for the same one. */
static inline void teacher_forward(const Teacher *r, const Workspace *w, const Batch *b, const Batch *read,
                                   float temperature, const ModelOutput *out) {
    const DivergenceOutput apart = teacher_wanted(r);
    model_divergence(&r->t->model, w, b, &r->apart, read, temperature, out, &apart);
    if (r->apart.teacher) trainer_count_flops(r->t, r->apart.teacher, read ? read : b, 1);
}

/* Sets the weights of targets [first, end) of the micro-batch in the loss. */
static inline void teacher_weigh(Teacher *r, int32_t first, int32_t end, double weight) {
    for (int32_t i = first; i < end; i++) r->weight[i] = (float)weight;
}

/* Forward and backward pass of the student, for a loss of which the gradient is known in advance: the weights are set;
 * dlogp: NULL, or the gradient of another part of the loss. */
static inline void teacher_train(const Teacher *r, const Workspace *w, const Batch *b, float temperature,
                                 const float *dlogp, const ModelOutput *out) {
    const DivergenceOutput apart = teacher_wanted(r);
    model_divergence_both(&r->t->model, w, b, &r->apart, NULL, temperature, r->weight, dlogp, out, &apart);
    if (r->apart.teacher) trainer_count_flops(r->t, r->apart.teacher, b, 1);
}

/* Backward pass after teacher_forward(); the weights are set. dlogp, dentropy: of another part of the loss, or NULL. */
static inline void teacher_backward(const Teacher *r, const Workspace *w, const Batch *b, float temperature,
                                    const float *dlogp, const float *dentropy) {
    model_divergence_backward(&r->t->model, w, b, &r->apart, temperature, r->weight, dlogp, dentropy);
}

/* The first target at which the teacher's log-probability is NaN, or -1. */
static inline int32_t teacher_broken(const Teacher *r, int32_t targets) {
    for (int32_t i = 0; i < targets; i++)
        if (isnan(r->out.logp[i])) return i;
    return -1;
}

/* Adds targets [first, end) of a micro-batch to the totals; logp, argmax: the student's. Returns the sum of the
 * divergences. */
static inline double teacher_add(const Teacher *r, int32_t first, int32_t end, const float *logp, const int32_t *argmax,
                                 TeacherStats *s) {
    double sum = 0;
    for (int32_t i = first; i < end; i++) {
        sum += r->out.value[i];
        s->forward_kl += r->out.forward_kl[i];
        s->reverse_kl += r->out.reverse_kl[i];
        s->logp += r->out.logp[i];
        s->own_logp += logp[i];
        s->entropy += r->out.entropy[i];
        s->agreement += argmax[i] == r->out.argmax[i];
        if (r->apart.lists) s->listed -= expm1((double)r->lists.rest[i]);
    }
    s->value += sum;
    s->targets += end - first;
    return sum;
}

/* Sets the metrics of a step, or with prefix "eval_" those of an evaluation. */
static inline void teacher_metrics(Metrics *m, const char *prefix, const TeacherStats *s) {
    const struct {
        const char *name;
        double total;
    } all[] = {{"distill/divergence", s->value},      {"distill/forward_kl", s->forward_kl},
               {"distill/reverse_kl", s->reverse_kl}, {"distill/agreement", s->agreement},
               {"distill/nll", -s->own_logp},         {"teacher/logp", s->logp},
               {"teacher/entropy", s->entropy},       {"teacher/listed_mass", s->listed}};
    const size_t count = sizeof all / sizeof *all - (s->listed <= 0); /* without lists the last one does not exist */
    for (size_t i = 0; i < count; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s%s", prefix, all[i].name);
        metrics_set(m, name, all[i].total / s->targets);
    }
}

/* Ends a run whose first step shows that distillation has no effect. Call it after trainer_update(). */
static inline void teacher_guard(const Teacher *r, const TeacherStats *s) {
    const Trainer *t = r->t;
    if (!r->on || !r->o || t->step != 1 || t->update.skipped) return;
    if (s->value / s->targets > 1e-9 && t->update.grad_norm > 0) return;
    die("%s: distillation has no effect: the divergence is %g and its gradient's norm %g; is it the model itself?",
        teacher_name(r->o), s->value / s->targets, t->update.grad_norm);
}

#endif
