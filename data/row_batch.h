/* row_batch.h - rows that several threads convert at once.
 *
 * A batch is the next lines of a file, or the next documents of a text, some megabytes of them. Each thread has a
 * tokenizer, a template and buffers of its own, takes one line after another, and keeps what it becomes in the batch;
 * the program then uses that in the order of the file. So the result does not depend on the number of threads, which is
 * that of OpenMP (OMP_NUM_THREADS), and the memory does not depend on the length of the file. A batch of one line or of
 * few bytes is converted by one thread.
 *
 *     RowWorkers w;
 *     RowBatch b = {0};
 *     if (!row_workers_open(&w, &rows, &e)) die("%s", e.text);
 *     do {
 *         row_batch_read(&b, &jsonl);
 *         row_batch_convert(&b, &w, &jsonl, any_kind, seed);
 *         for (int i = 0; i < b.count; i++) use(b.line[i].made, b.line[i].count);
 *         row_batch_clear(&b);
 *     } while (b.more > 0);                       // less than 0: reading failed, see b.error
 *     row_batch_free(&b);
 *     row_workers_close(&w);
 */
#ifndef DATA_ROW_BATCH_H
#define DATA_ROW_BATCH_H

#include "../llmc/base/error.h"     /* Error, xmalloc, xrealloc, xstrdup, ... */
#include "../llmc/base/io.h"        /* io_hash */
#include "../llmc/base/jsonl.h"     /* Jsonl, jsonl_error, jsonl_blank, jsonl_parse, ... */
#include "../llmc/base/text.h"      /* TextBuffer, TextSlice, text_free, TokenList */
#include "../llmc/records/shard.h"  /* Record */
#include "../llmc/text/chat.h"      /* chat_template_free, chat_template_parse */
#include "../llmc/text/tokenizer.h" /* tokenizer_share, tokenizer_unshare, tokenizer_use_threads */
#include "row_fields.h"             /* FIELD_CLUSTER, FIELD_COUNT, row_kind_name, row_peek, ... */
#include "rows.h"                   /* Rows, ROW_BAD, ROW_MADE, NOTE_COUNT, ... */
#include "super_ni.h"               /* super_ni_count, super_ni_keeps, super_ni_row */
#include "wordings.h"               /* WORDINGS_PER_ROW_MAX, wordings_draw */
#include <omp.h>

enum {
    ROW_BATCH_BYTES = 1 << 22, /* a batch is full if it has as many bytes, or as many lines */
    ROW_BATCH_LINES = 1 << 14,
    ROW_BATCH_SMALL = 1 << 16, /* a smaller batch is converted by one thread */
    ROW_BATCH_ALONE = 1 << 20, /* a document of as many bytes is a batch of its own, and all threads encode it */
};

/* What a line became: a record, or the reason for which it has none. */
typedef struct RowMade {
    RowResult result;
    Error *error;    /* of ROW_BAD; owned */
    Record record;   /* of ROW_MADE; its arrays and texts are owned. Kind text: tokens and count */
    int64_t trained; /* number of tokens that the mask selects */
    char *cluster;   /* of the row's tasks, or NULL; owned */
    uint64_t key;    /* hash that chooses the training or validation split */
    int32_t notes[NOTE_COUNT];
    char **unread; /* (unread_count) as in RowFields; owned */
    int unread_count, unread_more;
    bool found[FIELD_COUNT]; /* the row has the field that the user named */
} RowMade;

typedef struct RowLine {
    TextBuffer text;
    TextSlice document; /* of a plain text, instead of a line of JSON; belongs to the caller */
    int64_t number;
    bool too_long;
    RowMade *made; /* (count) one, or more if the row becomes several records; none of a blank line */
    int count;
} RowLine;

typedef struct RowBatch {
    RowLine *line; /* (capacity) */
    int count, capacity;
    size_t bytes;
    int more;    /* as of jsonl_text(): 0 after the last line, -1 if reading failed after the lines of the batch */
    Error error; /* why it failed */
} RowBatch;

/* What a thread converts rows with. */
typedef struct RowWorker {
    Rows *rows, own;
    Jsonl line; /* name and number of the current line, for messages, and its row */
} RowWorker;

typedef struct RowWorkers {
    RowWorker *worker; /* (count) */
    int count;
} RowWorkers;

/* ---- batches --------------------------------------------------------------------------------------------------- */

static inline void row_made_free(RowMade *m) {
    const char *const texts[] = {m->record.text, m->record.task, m->record.answer, m->record.fields};
    for (int i = 0; i < 4; i++) free((char *)texts[i]);
    for (int i = 0; i < m->unread_count; i++) free(m->unread[i]);
    free(m->unread);
    free(m->cluster);
    free(m->error);
    free(m->record.tokens);
    free(m->record.mask);
    free(m->record.length);
}

/* Empties a batch; short texts keep their memory for the next lines. */
static inline void row_batch_clear(RowBatch *b) {
    for (int i = 0; i < b->count; i++) {
        RowLine *l = &b->line[i];
        for (int k = 0; k < l->count; k++) row_made_free(&l->made[k]);
        free(l->made);
        l->made = NULL;
        l->count = 0;
        l->document = (TextSlice){0};
        if (l->text.capacity > ROW_BATCH_SMALL) text_free(&l->text);
    }
    b->count = 0;
    b->bytes = 0;
}

static inline void row_batch_free(RowBatch *b) {
    row_batch_clear(b);
    for (int i = 0; i < b->capacity; i++) text_free(&b->line[i].text);
    free(b->line);
    *b = (RowBatch){0};
}

static inline bool row_batch_full(const RowBatch *b) {
    return b->bytes >= ROW_BATCH_BYTES || b->count >= ROW_BATCH_LINES;
}

static inline RowLine *row_batch_more(RowBatch *b) {
    if (b->count == b->capacity) {
        const int capacity = 2 * b->capacity + 64;
        b->line = (RowLine *)xrealloc(b->line, (size_t)capacity, sizeof *b->line);
        memset(b->line + b->capacity, 0, (size_t)(capacity - b->capacity) * sizeof *b->line);
        b->capacity = capacity;
    }
    return &b->line[b->count++];
}

/* Adds the line that j has read, and takes its text. */
static inline void row_batch_add(RowBatch *b, Jsonl *j, bool too_long) {
    RowLine *l = row_batch_more(b);
    const TextBuffer spare = l->text;
    l->text = j->text;
    j->text = spare;
    l->number = j->line;
    l->too_long = too_long;
    b->bytes += l->text.length;
}

/* Reads lines until the batch is full. */
static inline void row_batch_read(RowBatch *b, Jsonl *j) {
    bool too_long;
    b->more = 1;
    while (!row_batch_full(b) && (b->more = jsonl_text(j, &too_long, &b->error)) > 0) row_batch_add(b, j, too_long);
}

/* Adds a document, which must outlive the batch. */
static inline void row_batch_document(RowBatch *b, const char *text, size_t n) {
    row_batch_more(b)->document = (TextSlice){text, n};
    b->bytes += n;
}

/* ---- converting ------------------------------------------------------------------------------------------------ */

/* Whether the row is of the kind of the first one. any: the user named the kind. */
static inline bool row_of_kind(const Rows *r, const Jsonl *j, json_t *row, bool any, Error *e) {
    const RowKind kind = any ? r->kind : row_kind(&r->fields, row);
    if (kind == r->kind || kind == ROW_AUTO) return true;
    char names[240];
    row_list(row, names, sizeof names);
    return jsonl_error(j, NULL, e,
                       "is a row of kind %s (it has the fields %s), but the first row is of kind %s; set --kind",
                       row_kind_name(kind), names, row_kind_name(r->kind));
}

static inline RowMade *row_line_more(RowLine *l) {
    l->made = (RowMade *)xrealloc(l->made, (size_t)l->count + 1, sizeof *l->made);
    l->made[l->count] = (RowMade){.result = ROW_BAD};
    return &l->made[l->count++];
}

static inline void row_made_bad(RowMade *m, const Error *e) {
    m->error = (Error *)xmalloc(sizeof *m->error);
    *m->error = *e;
}

/* Takes the record that was made last, with its arrays, and copies its texts. */
static inline void row_made_take(RowMade *m, Rows *r, uint64_t seed) {
    Record *to = &m->record;
    m->result = ROW_MADE;
    m->key = io_hash(r->key.text, r->key.length, seed);
    *to = r->kind == ROW_TEXT ? (Record){.count = r->ids.count} : r->record;
    to->tokens = r->ids.ids;
    r->ids = (TokenList){0};
    const char **const texts[] = {&to->text, &to->task, &to->answer, &to->fields};
    for (int i = 0; i < 4; i++) *texts[i] = *texts[i] ? xstrdup(*texts[i]) : NULL;
    if (to->length) r->length = NULL;
    if (!to->mask) return;
    r->mask = NULL;
    for (int32_t i = 0; i < to->count; i++) m->trained += to->mask[i] != 0;
}

/* Takes what the user should hear about the row. */
static inline void row_made_notes(RowMade *m, Rows *r) {
    RowFields *f = &r->fields;
    memcpy(m->notes, r->notes, sizeof m->notes);
    m->unread_count = f->unread_count;
    m->unread_more = f->unread_more;
    if (!f->unread_count) return;
    m->unread = (char **)xmalloc((size_t)f->unread_count * sizeof *m->unread);
    memcpy(m->unread, f->unread, (size_t)f->unread_count * sizeof *m->unread);
    f->unread_count = 0;
}

/* Takes the name of the row's cluster. */
static inline void row_made_cluster(RowMade *m, Rows *r, const Jsonl *j) {
    Error e;
    char name[128];
    json_t *value = row_peek(&r->fields, j->row, FIELD_CLUSTER);
    if (!value || m->result != ROW_MADE) return;
    const char *text = jsonl_value_text(j, value, row_called(&r->fields, j->row, FIELD_CLUSTER, name), &e);
    if (text) {
        m->cluster = xstrdup(text);
        return;
    }
    m->result = ROW_BAD;
    row_made_bad(m, &e);
}

/* Makes the next record of a row. */
static inline void row_make_next(RowLine *l, RowWorker *w, bool any, uint64_t seed) {
    Error e;
    Rows *r = w->rows;
    Jsonl *j = &w->line;
    RowMade *m = row_line_more(l);
    const bool fits = row_of_kind(r, j, j->row, any, &e);
    if (fits) {
        m->result = row_make(r, j, j->row, &e);
        row_made_notes(m, r);
    }
    if (m->result == ROW_BAD) row_made_bad(m, &e);
    if (m->result == ROW_MADE) row_made_take(m, r, seed);
    row_made_cluster(m, r, j);
    for (int i = 0; i < FIELD_COUNT; i++)
        m->found[i] = r->fields.name[i] && row_value(j->row, r->fields.name[i]) != NULL;
}

/* Converts a document. */
static inline void row_document_convert(RowLine *l, Rows *r, uint64_t seed) {
    Error e;
    RowMade *m = row_line_more(l);
    if (!row_document(r, l->document.text, l->document.length, &e)) {
        row_made_bad(m, &e);
        return;
    }
    row_made_take(m, r, seed);
    m->key = io_hash(l->document.text, l->document.length, seed);
}

/* Converts a row in each of its wordings. */
static inline void row_word(RowLine *l, RowWorker *w, bool any, uint64_t seed) {
    Error e;
    Rows *r = w->rows;
    int chosen[WORDINGS_PER_ROW_MAX];
    const json_t *value = row_peek(&r->fields, w->line.row, FIELD_TASK);
    const char *task = json_is_string(value) ? json_string_value(value) : r->task_name ? r->task_name : "";
    const int count = wordings_draw(r->wordings, task, (uint64_t)l->number, chosen);
    if (!count) {
        jsonl_error(&w->line, NULL, &e, "has the task '%.80s', for which %s has no wording", task, r->wordings->path);
        row_made_bad(row_line_more(l), &e);
    }
    for (int i = 0; i < count; i++) {
        r->fields.pattern[FIELD_PROMPT] = r->wordings->item[chosen[i]].prompt;
        r->fields.pattern[FIELD_COMPLETION] = r->wordings->item[chosen[i]].completion;
        do row_make_next(l, w, any, seed);
        while (r->more);
    }
}

/* Converts the instances of a task of Super-NaturalInstructions. */
static inline void row_instances(RowLine *l, RowWorker *w, bool any, uint64_t seed) {
    Error e;
    Rows *r = w->rows;
    Jsonl *j = &w->line;
    json_t *task = j->row;
    const size_t count = super_ni_count(task);
    int64_t left = r->super_ni->per_task;
    if (!count) {
        const json_t *list = json_object_get(task, "Instances");
        jsonl_error(j, "Instances", &e, "is %s, expected a list of instances",
                    json_is_array(list) ? "an empty list" : jsonl_type(list));
        row_made_bad(row_line_more(l), &e);
    }
    for (size_t i = 0; i < count; i++) {
        if (!super_ni_keeps(r->super_ni, j, i, count, &left)) continue;
        j->row = super_ni_row(r->super_ni, &r->tokenizer, j, task, i, r->kind == ROW_PROMPT, &e);
        if (!j->row) row_made_bad(row_line_more(l), &e);
        else {
            do row_make_next(l, w, any, seed);
            while (r->more);
        }
        json_decref(j->row);
    }
    j->row = task;
}

/* Converts a line. */
static inline void row_line_convert(RowLine *l, RowWorker *w, bool any, uint64_t seed) {
    Error e;
    Jsonl *j = &w->line;
    if (l->document.text) {
        row_document_convert(l, w->rows, seed);
        return;
    }
    const TextBuffer spare = j->text;
    j->text = l->text;
    l->text = spare;
    j->line = l->number;
    if (jsonl_blank(j) && !l->too_long) return;
    if (!(l->too_long ? jsonl_too_long(j, &e) : jsonl_parse(j, &e))) {
        row_made_bad(row_line_more(l), &e);
        return;
    }
    if (w->rows->super_ni) {
        row_instances(l, w, any, seed);
        return;
    }
    if (w->rows->wordings) {
        row_word(l, w, any, seed);
        return;
    }
    do row_make_next(l, w, any, seed);
    while (w->rows->more);
}

/* Converts the lines of a batch. any: rows of every kind are read as rows.kind; seed: of the key. */
static inline void row_batch_convert(RowBatch *b, RowWorkers *w, const Jsonl *j, bool any, uint64_t seed) {
    for (int i = 0; i < w->count; i++) {
        Jsonl *line = &w->worker[i].line;
        line->name = j->name;
        line->limit = j->limit;
        line->array = j->array;
    }
    if (w->count == 1 || b->count == 1 || b->bytes < ROW_BATCH_SMALL) {
        for (int i = 0; i < b->count; i++) row_line_convert(&b->line[i], &w->worker[0], any, seed);
        return;
    }
#pragma omp parallel for num_threads(w->count) schedule(dynamic, 4)
    for (int i = 0; i < b->count; i++) row_line_convert(&b->line[i], &w->worker[omp_get_thread_num()], any, seed);
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

static inline void row_workers_close(RowWorkers *w) {
    for (int i = 0; i < w->count; i++) {
        RowWorker *one = &w->worker[i];
        json_decref(one->line.row);
        text_free(&one->line.text);
        if (!i) continue;
        rows_clear(&one->own);
        chat_template_free(&one->own.chat);
        tokenizer_unshare(&one->own.tokenizer);
    }
    free(w->worker);
    *w = (RowWorkers){0};
}

/* Gives a thread a tokenizer, a template and buffers of its own. */
static inline bool row_worker_open(RowWorker *w, const Rows *rows, Error *e) {
    w->own = (Rows){.fields = rows->fields,
                    .task_name = rows->task_name,
                    .answer_after = rows->answer_after,
                    .system = rows->system,
                    .prompt_end = rows->prompt_end,
                    .step_separator = rows->step_separator,
                    .max_tokens = rows->max_tokens,
                    .truncation = rows->truncation,
                    .kind = rows->kind,
                    .stop = rows->stop,
                    .wordings = rows->wordings,
                    .super_ni = rows->super_ni,
                    .train_all = rows->train_all,
                    .texts = rows->texts};
    row_fields_begin(&w->own.fields);
    w->rows = &w->own;
    w->own.tokenizer = tokenizer_share(&rows->tokenizer);
    return chat_template_parse(&w->own.chat, rows->chat.spec, e);
}

/* Sets up all threads of OpenMP. The first one uses `rows`, which must be complete and outlive the others. On failure,
 * row_workers_close() frees what there is. */
static inline bool row_workers_open(RowWorkers *w, Rows *rows, Error *e) {
    const int count = omp_get_max_threads();
    *w = (RowWorkers){.worker = (RowWorker *)xcalloc((size_t)count, sizeof *w->worker), .count = 1};
    w->worker[0].rows = rows;
    tokenizer_use_threads(&rows->tokenizer, count);
    for (; w->count < count; w->count++)
        if (!row_worker_open(&w->worker[w->count], rows, e)) return false;
    return true;
}

#endif
