/* teacher_table.h - files of a teacher's log-probabilities, so that distillation needs no teacher in memory.
 *
 *   header     128 bytes, little-endian: int32 magic 20261126, int32 version 1, int32 vocabulary V, int32 tokens of a list K,
 *              int32 tables (1 or 2), float32 temperature, uint64 model: XXH3-64 of the teacher's weights as float32,
 *              uint64 bytes of the tokenizer; rest 0
 *   tokenizer  the blob of tokenizer_store() (text/tokenizer.h), or empty
 *   tables     each: uint64 data, uint64 targets, then a row for each target:
 *                float32 log T of the target, float32 entropy of T, float32 log of the sum of T over the tokens that are not
 *                listed (-inf if K = V), K float32 log T of the K likeliest tokens, largest first, K ids (2 bytes if
 *                V <= 65536, else 4)
 *   checksum   XXH3-64 of everything before it; the file ends here
 *
 * T = softmax(u / temperature) are the teacher's distributions over V tokens. One table belongs to the training records; a
 * second may belong to the validation records. `data` is a hash of the tokens and targets of the records to which the rows
 * belong (teacher_table_data), so a file is tied to a shard's contents and --max-length, not to a path.
 *
 * The file is not trusted: magic number, version and sizes are checked before memory is allocated, the checksum and every
 * row before one is used: ids are in range and different, probabilities fall and add up to 1. An uncompressed file is mapped
 * (map.h), and a row is checked again when it is read. zstd is supported as in io.h.
 *
 *     TeacherTable t;
 *     TeacherRow row;
 *     if (!teacher_table_open(&t, "teacher.table", &e)) die("%s", e.text);
 *     const int k = teacher_table_find(&t, hash, targets);                                     // -1: made from other data
 *     if (!teacher_table_row(&t, k, 0, &row, logp, token, &e)) die("%s", e.text);              // logp, token: (t.count)
 *     teacher_table_close(&t);
 */
#ifndef LLMC_RECORDS_TEACHER_TABLE_H
#define LLMC_RECORDS_TEACHER_TABLE_H

#include "../base/error.h"     /* Error, error_set, xmalloc, xcalloc, ... */
#include "../base/file_kind.h" /* MAGIC_TEACHER */
#include "../base/io.h"        /* Reader, Writer, io_hash, writer_write, ... */
#include "../base/map.h"       /* Mapping, mapping_free, mapping_touch */
#include <assert.h>
#include <math.h>

enum { TEACHER_VERSION = 1, TEACHER_HEADER = 32, TEACHER_TABLES = 2, TEACHER_VOCAB_MAX = 1 << 22 };

/* The figures of one target: log T of the target, the entropy of T, and the log of the probability of all tokens that are
 * not listed. */
typedef struct TeacherRow {
    float logp, entropy, rest;
} TeacherRow;

typedef struct TeacherRows {
    uint64_t data, targets;
    const uint8_t *bytes; /* (targets) rows */
} TeacherRows;

typedef struct TeacherTable {
    char *name; /* for messages */
    int32_t vocab, count;
    float temperature;
    uint64_t model;
    void *tokenizer; /* (tokenizer_bytes) */
    size_t tokenizer_bytes;
    uint64_t hash; /* of the file */
    int tables;
    TeacherRows table[TEACHER_TABLES];
    uint8_t *seen; /* (vocab / 8) bits of the tokens of a row that is checked */
    Mapping *map;  /* the file that the rows are in, or NULL */
} TeacherTable;

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static inline size_t teacher_id_bytes(int32_t vocab) { return vocab > 65536 ? 4 : 2; }

static inline size_t teacher_row_bytes(int32_t vocab, int32_t count) {
    return sizeof(TeacherRow) + (size_t)count * (sizeof(float) + teacher_id_bytes(vocab));
}

/* Adds a record to the hash of a table's data; begin with 0. mask: (count) its targets are the tokens from the second on
 * whose mask is not 0; NULL: all. */
static inline uint64_t teacher_table_data(uint64_t hash, const int32_t *tokens, const uint8_t *mask, int32_t count) {
    const uint64_t part[] = {hash, (uint64_t)count, io_hash(tokens, (size_t)count * sizeof *tokens, 0),
                             mask ? io_hash(mask, (size_t)count, 0) : 0};
    return io_hash(part, sizeof part, 0);
}

/* Marks token `id`. False if it is not in the vocabulary or has been marked before. */
static inline bool teacher_mark(const TeacherTable *t, int32_t id) {
    if (id < 0 || id >= t->vocab || t->seen[id / 8] >> id % 8 & 1) return false;
    t->seen[id / 8] |= (uint8_t)(1 << id % 8);
    return true;
}

static inline bool teacher_is_logp(float x) { return x <= 1e-3f && x > -INFINITY; }

/* Decodes a row. Returns NULL, or what is wrong with it. */
static inline const char *teacher_row_decode(const TeacherTable *t, const uint8_t *bytes, TeacherRow *row, float *logp,
                                             int32_t *token) {
    const uint8_t *ids = bytes + sizeof *row + (size_t)t->count * sizeof *logp;
    const bool narrow = teacher_id_bytes(t->vocab) == 2, whole = t->count == t->vocab;
    const char *wrong = NULL;
    double sum = 0;
    int32_t marked = 0;
    memcpy(row, bytes, sizeof *row);
    memcpy(logp, bytes + sizeof *row, (size_t)t->count * sizeof *logp);
    for (int32_t k = 0; k < t->count; k++) {
        uint16_t id = 0;
        if (narrow) memcpy(&id, ids + 2 * (size_t)k, 2);
        else memcpy(&token[k], ids + 4 * (size_t)k, 4);
        if (narrow) token[k] = id;
    }
    for (; !wrong && marked < t->count; marked++) {
        const float x = logp[marked];
        if (!teacher_mark(t, token[marked])) {
            wrong = "a token that is not in the vocabulary or is listed twice";
            break;
        }
        if (!teacher_is_logp(x) || (marked && x > logp[marked - 1])) wrong = "log-probabilities that do not fall";
        sum += exp((double)x);
    }
    for (int32_t k = 0; k < marked; k++) t->seen[token[k] / 8] = 0;
    if (wrong) return wrong;
    if (whole ? row->rest != -INFINITY : !teacher_is_logp(row->rest)) return "a rest that is not a log-probability";
    if (!(fabs(sum + (whole ? 0 : exp((double)row->rest)) - 1) < 1e-3)) return "probabilities that do not add up to 1";
    if (!teacher_is_logp(row->logp)) return "no log-probability of its target";
    if (!(row->entropy >= -1e-3 && row->entropy <= log(t->vocab) + 1e-3)) return "an impossible entropy";
    return NULL;
}

/* Reads row i of table k: the figures of its target, and K log-probabilities and tokens. The file may have been changed
 * since it was opened. */
static inline bool teacher_table_row(const TeacherTable *t, int k, uint64_t i, TeacherRow *row, float *logp,
                                     int32_t *token, Error *e) {
    const size_t bytes = teacher_row_bytes(t->vocab, t->count);
    assert(k >= 0 && k < t->tables && i < t->table[k].targets);
    mapping_touch(t->map, bytes);
    const char *wrong = teacher_row_decode(t, t->table[k].bytes + i * bytes, row, logp, token);
    return !wrong || error_set(e, "%s: target %llu of table %d has %s", t->name, (unsigned long long)i, k, wrong);
}

/* The table of this data, or -1. */
static inline int teacher_table_find(const TeacherTable *t, uint64_t data, uint64_t targets) {
    for (int k = 0; k < t->tables; k++)
        if (t->table[k].data == data && t->table[k].targets == targets) return k;
    return -1;
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

static inline void teacher_table_close(TeacherTable *t) {
    for (int k = 0; !t->map && k < TEACHER_TABLES; k++) free((void *)t->table[k].bytes);
    mapping_free(t->map);
    free(t->name), free(t->tokenizer), free(t->seen);
    *t = (TeacherTable){0};
}

/* What the header says about the rest of the file. */
typedef struct TeacherSizes {
    int tables;
    uint64_t tokenizer; /* bytes */
} TeacherSizes;

static inline bool teacher_table_header(TeacherTable *t, TeacherSizes *sizes, Reader *r, Error *e) {
    int32_t h[TEACHER_HEADER];
    if (!reader_header(r, h, sizeof h, MAGIC_TEACHER, MAGIC_TEACHER, e)) return false;
    if (h[1] != TEACHER_VERSION)
        return error_set(e, "%s: version is %d, expected %d", r->name, (int)h[1], TEACHER_VERSION);
    if (h[2] < 1 || h[2] > TEACHER_VOCAB_MAX)
        return error_set(e, "%s: vocabulary is %d, expected 1 to %d", r->name, (int)h[2], TEACHER_VOCAB_MAX);
    if (h[3] < 1 || h[3] > h[2])
        return error_set(e, "%s: lists have %d tokens, expected 1 to the vocabulary of %d", r->name, (int)h[3],
                         (int)h[2]);
    if (h[4] < 1 || h[4] > TEACHER_TABLES)
        return error_set(e, "%s: has %d tables, expected 1 or %d", r->name, (int)h[4], TEACHER_TABLES);
    for (int i = 10; i < TEACHER_HEADER; i++)
        if (h[i]) return error_set(e, "%s: header field %d is %d, expected 0", r->name, i, (int)h[i]);
    t->vocab = h[2];
    t->count = h[3];
    sizes->tables = h[4];
    memcpy(&t->temperature, h + 5, sizeof t->temperature);
    memcpy(&t->model, h + 6, sizeof t->model);
    memcpy(&sizes->tokenizer, h + 8, sizeof sizes->tokenizer);
    if (!(t->temperature > 0 && t->temperature < INFINITY))
        return error_set(e, "%s: temperature is %g, expected above 0", r->name, (double)t->temperature);
    return true;
}

/* Reads the rows of the next table. */
static inline bool teacher_table_rows(TeacherTable *t, Reader *r, Error *e) {
    uint64_t head[2], bytes;
    TeacherRows *rows = &t->table[t->tables];
    if (!reader_read(r, head, sizeof head, "table", e)) return false;
    if (head[1] < 1 || __builtin_mul_overflow(head[1], teacher_row_bytes(t->vocab, t->count), &bytes) ||
        bytes > INT64_MAX)
        return error_set(e, "%s: a table has %llu targets, which do not fit into a file", r->name,
                         (unsigned long long)head[1]);
    *rows = (TeacherRows){.data = head[0], .targets = head[1]};
    rows->bytes = t->map ? reader_lend(r, bytes, "log-probabilities", e)
                         : (const uint8_t *)reader_blob(r, bytes, "log-probabilities", e);
    if (rows->bytes) t->tables++;
    return rows->bytes != NULL;
}

/* Checks all rows of table k. */
static inline bool teacher_table_check(const TeacherTable *t, int k, Error *e) {
    float *logp = (float *)xmalloc((size_t)t->count * sizeof *logp);
    int32_t *token = (int32_t *)xmalloc((size_t)t->count * sizeof *token);
    TeacherRow row;
    bool ok = true;
    for (uint64_t i = 0; ok && i < t->table[k].targets; i++) ok = teacher_table_row(t, k, i, &row, logp, token, e);
    free(logp), free(token);
    return ok;
}

/* Reads the parts in file order. */
static inline bool teacher_table_body(TeacherTable *t, Reader *r, Error *e) {
    TeacherSizes sizes = {0};
    if (!teacher_table_header(t, &sizes, r, e)) return false;
    t->map = reader_map(r);
    t->tokenizer_bytes = (size_t)sizes.tokenizer;
    if (!(t->tokenizer = reader_blob(r, sizes.tokenizer, "tokenizer", e))) return false;
    for (int k = 0; k < sizes.tables; k++)
        if (!teacher_table_rows(t, r, e)) return false;
    t->hash = reader_hash(r);
    if (!reader_checksum(r, e)) return false;
    t->seen = (uint8_t *)xcalloc((size_t)t->vocab / 8 + 1, 1);
    for (int k = 0; k < t->tables; k++)
        if (!teacher_table_check(t, k, e)) return false;
    return true;
}

/* Reads a table from an open reader, up to its end. On failure no memory stays allocated. */
static inline bool teacher_table_read(TeacherTable *t, Reader *r, Error *e) {
    *t = (TeacherTable){.name = xstrdup(r->name)};
    if (teacher_table_body(t, r, e)) return true;
    teacher_table_close(t);
    return false;
}

/* Opens the file `path` and checks it. */
static inline bool teacher_table_open(TeacherTable *t, const char *path, Error *e) {
    Reader r;
    *t = (TeacherTable){0};
    if (!reader_open(&r, path, e)) return false;
    const bool ok = teacher_table_read(t, &r, e);
    reader_close(&r);
    return ok;
}

/* ---- writing ------------------------------------------------------------------------------------------------------ */

/* Begins the file `path`, with the properties of `t` but its rows. Each table is written with teacher_table_begin() and its
 * encoded rows with writer_write(); then call teacher_table_end(). After a failure, call writer_abort(). */
static inline bool teacher_table_create(Writer *w, const char *path, const TeacherTable *t, Error *e) {
    int32_t h[TEACHER_HEADER] = {MAGIC_TEACHER, TEACHER_VERSION, t->vocab, t->count, t->tables};
    const uint64_t tokenizer = t->tokenizer_bytes;
    memcpy(h + 5, &t->temperature, sizeof t->temperature);
    memcpy(h + 6, &t->model, sizeof t->model);
    memcpy(h + 8, &tokenizer, sizeof tokenizer);
    return writer_open(w, path, e) && writer_write(w, h, sizeof h, e) &&
           writer_write(w, t->tokenizer, t->tokenizer_bytes, e);
}

static inline bool teacher_table_begin(Writer *w, uint64_t data, uint64_t targets, Error *e) {
    const uint64_t head[] = {data, targets};
    return writer_write(w, head, sizeof head, e);
}

/* Encodes a row to `bytes`, of teacher_row_bytes(). logp, token: (t->count), largest first. */
static inline void teacher_row_encode(const TeacherTable *t, const TeacherRow *row, const float *logp,
                                      const int32_t *token, uint8_t *bytes) {
    const size_t n = (size_t)t->count, wide = teacher_id_bytes(t->vocab);
    uint8_t *ids = bytes + sizeof *row + n * sizeof *logp;
    memcpy(bytes, row, sizeof *row);
    memcpy(bytes + sizeof *row, logp, n * sizeof *logp);
    for (size_t k = 0; k < n; k++) memcpy(ids + wide * k, &token[k], wide); /* little-endian: the low bytes */
}

/* Writes the checksum; the file appears when all of it is on disk. */
static inline bool teacher_table_end(Writer *w, Error *e) { return writer_checksum(w, e) && writer_commit(w, e); }

#endif
