/* teacher_lists.h - a teacher's likeliest tokens at every target of the data, computed once and kept in a file
 * (records/teacher_table.h), so that the epochs that follow need no teacher.
 *
 * A distribution T becomes its K likeliest tokens with their log-probabilities, and the probability of all other tokens, which
 * is summed over them and not taken from 1. The divergence over these K + 1 outcomes is at most that over the vocabulary. The
 * other figures of a target, log T of its token and the entropy of T, are those over the vocabulary.
 *
 *     TeacherTargets train, *sets[] = {&train};
 *     const TeacherTable about = {.vocab = 260, .count = 64, .temperature = 1, .tables = 1};
 *     if (!teacher_targets_open(&train, &shard, 512, true, &e)) die("%s", e.text);
 *     if (!teacher_lists_write("teacher.table", &about, &model, &work, &batch, sets, 1, &e)) die("%s", e.text);
 *     teacher_targets_close(&train);
 */
#ifndef LLMC_TRAIN_TEACHER_LISTS_H
#define LLMC_TRAIN_TEACHER_LISTS_H

#include "../base/error.h"            /* Error, xmalloc, error_set, xcalloc */
#include "../base/io.h"               /* Writer, writer_abort, writer_write */
#include "../model/backend.h"         /* Floats, Backend */
#include "../model/batch.h"           /* Batch */
#include "../model/model.h"           /* Model, model_sync */
#include "../model/pack.h"            /* batch_clear, batch_sequence */
#include "../model/transformer.h"     /* ModelOutput, model_forward, model_logits_part */
#include "../model/workspace.h"       /* Workspace */
#include "../records/shard.h"         /* Record, Shard, record_free, shard_record */
#include "../records/teacher_table.h" /* TeacherRow, TeacherTable, teacher_row_bytes, teacher_row_encode, ... */
#include <math.h>

/* ---- one distribution -------------------------------------------------------------------------------------------- */

/* Whether token a comes before b in a list: it is likelier, or of equal tokens the first. */
static inline bool teacher_before(const float *z, int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; }

/* Restores the heap of n tokens, whose root is the last of a list, after its entry `i` has come later. */
static inline void teacher_sift(const float *z, int32_t *heap, int32_t n, int32_t i) {
    for (int32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && teacher_before(z, heap[child], heap[child + 1])) child++;
        if (!teacher_before(z, heap[i], heap[child])) return;
        const int32_t held = heap[i];
        heap[i] = heap[child];
        heap[child] = held;
    }
}

/* The K likeliest of V tokens, in order. */
static inline void teacher_likeliest(const float *z, int32_t V, int32_t K, int32_t *token) {
    for (int32_t k = 0; k < K; k++) token[k] = k;
    for (int32_t i = K / 2; i-- > 0;) teacher_sift(z, token, K, i);
    for (int32_t v = K; v < V; v++) {
        if (!teacher_before(z, v, token[0])) continue;
        token[0] = v;
        teacher_sift(z, token, K, 0);
    }
    for (int32_t n = K; n-- > 1;) { /* the root is the last of those that are left */
        const int32_t last = token[0];
        token[0] = token[n];
        token[n] = last;
        teacher_sift(z, token, n, 0);
    }
}

/* The row of one target from its V logits: T = softmax(z / temperature). logp, token: (K). The tokens that are not listed are
 * those that come after the last one of the list; their sum is relative to their own maximum, so that it never underflows. */
static inline TeacherRow teacher_row_of(const float *z, int32_t V, int32_t K, float temperature, int32_t target,
                                        float *logp, int32_t *token) {
    teacher_likeliest(z, V, K, token);
    const int32_t last = token[K - 1];
    const double max = z[token[0]];
    double rest_max = -INFINITY, sum = 0, rest = 0, weighted = 0;
    for (int32_t v = 0; v < V; v++)
        if (teacher_before(z, last, v) && z[v] > rest_max) rest_max = z[v];
    for (int32_t v = 0; v < V; v++) {
        const double y = (z[v] - max) / temperature, p = exp(y);
        sum += p;
        weighted += p > 0 ? p * y : 0;
        if (teacher_before(z, last, v)) rest += exp((z[v] - rest_max) / temperature);
    }
    const double log_sum = log(sum);
    for (int32_t k = 0; k < K; k++) logp[k] = (float)((z[token[k]] - max) / temperature - log_sum);
    return (TeacherRow){
        .logp = (float)((z[target] - max) / temperature - log_sum),
        .entropy = (float)(log_sum - weighted / sum),
        .rest = K < V ? (float)((rest_max - max) / temperature + log(rest) - log_sum) : -INFINITY,
    };
}

/* ---- the targets of a shard ---------------------------------------------------------------------------------------- */

/* The targets of a shard's records, which are truncated to max_length tokens, in the order of the records: the tokens from
 * the second on, all or those of the mask. */
typedef struct TeacherTargets {
    const Shard *shard;
    int32_t max_length;
    bool masked;
    int64_t *at;   /* (shard->count + 1) the first target of each record */
    uint64_t data; /* teacher_table_data() of all records */
} TeacherTargets;

/* Reads record i, truncated. */
static inline bool teacher_targets_record(const TeacherTargets *t, int64_t i, Record *r, Error *e) {
    if (!shard_record(t->shard, i, r, e)) return false;
    if (r->count > t->max_length) r->count = t->max_length;
    return true;
}

/* Finds the targets of a shard. masked: only the tokens of the records' masks are targets. */
static inline bool teacher_targets_open(TeacherTargets *t, const Shard *s, int32_t max_length, bool masked, Error *e) {
    Record r = {0};
    bool ok = true;
    *t = (TeacherTargets){.shard = s, .max_length = max_length, .masked = masked};
    t->at = (int64_t *)xcalloc((size_t)s->count + 1, sizeof *t->at);
    for (int64_t i = 0; ok && i < s->count; i++) {
        if (!(ok = teacher_targets_record(t, i, &r, e))) break;
        t->at[i + 1] = t->at[i];
        for (int32_t k = 1; k < r.count; k++) t->at[i + 1] += !masked || r.mask[k];
        t->data = teacher_table_data(t->data, r.tokens, masked ? r.mask : NULL, r.count);
    }
    record_free(&r);
    return ok;
}

static inline void teacher_targets_close(TeacherTargets *t) {
    free(t->at);
    *t = (TeacherTargets){0};
}

/* ---- writing ------------------------------------------------------------------------------------------------------ */

enum { TEACHER_PART = 64 }; /* targets whose logits exist at once */

/* What the rows are made with. */
typedef struct TeacherListMaker {
    const Model *teacher;
    const Workspace *work;
    const TeacherTable *about;
    Writer *out;
    Floats *device; /* (TEACHER_PART, the teacher's vocabulary) */
    float *logits;  /* the same on the host */
    uint8_t *rows;  /* (TEACHER_PART) encoded rows */
} TeacherListMaker;

/* Writes the rows of n targets whose logits are there. Fails if one of them is not finite. */
static inline bool teacher_lists_part(TeacherListMaker *m, const int32_t *target, int32_t n, Error *e) {
    const int32_t V = m->about->vocab, K = m->about->count;
    const size_t stride = (size_t)m->teacher->config.vocab, bytes = teacher_row_bytes(V, K);
    bool finite = true;
#pragma omp parallel
    {
        float *logp = (float *)xmalloc((size_t)K * sizeof *logp);
        int32_t *token = (int32_t *)xmalloc((size_t)K * sizeof *token);
#pragma omp for schedule(static) reduction(&& : finite)
        for (int32_t r = 0; r < n; r++) {
            const TeacherRow row =
                teacher_row_of(m->logits + (size_t)r * stride, V, K, m->about->temperature, target[r], logp, token);
            finite = finite && isfinite(row.entropy) && isfinite(row.logp) && isfinite(logp[K - 1]) &&
                     (K == V || isfinite(row.rest));
            teacher_row_encode(m->about, &row, logp, token, m->rows + (size_t)r * bytes);
        }
        free(logp), free(token);
    }
    if (!finite) return error_set(e, "%s: the teacher's logits are not finite", m->about->name);
    return writer_write(m->out, m->rows, (size_t)n * bytes, e);
}

/* Writes the rows of a batch's targets. */
static inline bool teacher_lists_batch(TeacherListMaker *m, const Batch *b, Error *e) {
    const ModelOutput none = {0};
    if (!b->targets) return true;
    model_forward(m->teacher, m->work, b, 1.0f, &none);
    for (int32_t first = 0; first < b->targets; first += TEACHER_PART) {
        const int32_t n = b->targets - first < TEACHER_PART ? b->targets - first : TEACHER_PART;
        model_logits_part(m->teacher, m->work, first, n, m->device, m->logits);
        if (!model_sync(m->teacher, e) || !teacher_lists_part(m, b->target_token + first, n, e)) return false;
    }
    return true;
}

/* Writes the table of one shard. b: a batch to use, at least as long as the longest record. */
static inline bool teacher_lists_table(TeacherListMaker *m, Batch *b, const TeacherTargets *t, Error *e) {
    Record r = {0};
    const int64_t count = t->shard->count;
    bool ok = teacher_table_begin(m->out, t->data, (uint64_t)t->at[count], e);
    batch_clear(b);
    for (int64_t i = 0; ok && i < count; i++) {
        if (t->at[i + 1] == t->at[i]) continue;
        if (!(ok = teacher_targets_record(t, i, &r, e))) break;
        if (b->rows + r.count > b->rows_max) {
            ok = teacher_lists_batch(m, b, e);
            batch_clear(b);
        }
        batch_sequence(b, r.tokens, t->masked ? r.mask : NULL, r.count);
    }
    ok = ok && teacher_lists_batch(m, b, e);
    batch_clear(b);
    record_free(&r);
    return ok;
}

/* Computes the lists of a teacher at the targets of `count` shards and writes them to a file. about: its properties, where
 * name is that of the teacher and vocab may be smaller than the teacher's, whose other tokens are padding; w: of the teacher, for inference. */
static inline bool teacher_lists_write(const char *path, const TeacherTable *about, const Model *teacher,
                                       const Workspace *w, Batch *b, TeacherTargets *const *sets, int count, Error *e) {
    Writer out;
    const Backend *backend = teacher->backend;
    const size_t logits = (size_t)TEACHER_PART * (size_t)teacher->config.vocab * sizeof(float);
    TeacherListMaker m = {.teacher = teacher, .work = w, .about = about, .out = &out};
    if (!(m.device = (Floats *)backend->alloc(teacher->device, logits, "logits", e))) return false;
    m.logits = (float *)xmalloc(logits);
    m.rows = (uint8_t *)xmalloc(TEACHER_PART * teacher_row_bytes(about->vocab, about->count));
    bool ok = teacher_table_create(&out, path, about, e);
    for (int k = 0; ok && k < count; k++) ok = teacher_lists_table(&m, b, sets[k], e);
    ok = ok && teacher_table_end(&out, e);
    if (!ok) writer_abort(&out);
    backend->release(teacher->device, m.device);
    free(m.logits), free(m.rows);
    return ok;
}

#endif
