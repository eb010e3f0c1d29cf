/* ref_logps.h - files of precomputed reference log-probabilities, so that training needs no reference model in memory.
 *
 *   header     64 bytes, little-endian: int32 magic 20261125, int32 version 1, int32 tables (1 or 2), int32 0,
 *              uint64 model: XXH3-64 of the reference's weights as float32; rest 0
 *   tables     each: uint64 data, uint64 count, then count float32: log ref of each token of each completion, in the
 *              trainer's order
 *   checksum   XXH3-64 of everything before it; the file ends here
 *
 * One table belongs to the training shard; a second may belong to the held-out shard. `data` is a hash of the tokens to
 * which the values belong (ref_logps_data), so a file is tied to a shard's contents and --max-length, not to a path.
 * The values are per token, not summed, so a file serves every loss, including LD-DPO and length-normalised ones. The
 * file is not trusted: magic number, version and sizes are checked before memory is allocated, and the checksum before
 * a value is used. Values that are not log-probabilities are rejected. zstd and "-" are supported as in io.h.
 *
 *     RefLogps r;
 *     if (!ref_logps_read(&r, "ref.logps", &e)) die("%s", e.text);
 *     if (r.model != model_weights_hash(&reference)) die("made with another model");     // model/model_file.h
 *     const float *logp = ref_logps_find(&r, hash, count);             // NULL: made from other data
 */
#ifndef LLMC_RECORDS_REF_LOGPS_H
#define LLMC_RECORDS_REF_LOGPS_H

#include "../base/error.h"     /* error_set, Error */
#include "../base/file_kind.h" /* FILE_KIND_TEXT, MAGIC_REF_LOGPS */
#include "../base/io.h"        /* Reader, XXH3_64bits, writer_write, reader_read, ... */
#include <assert.h>

enum { REF_LOGPS_MAGIC = MAGIC_REF_LOGPS, REF_LOGPS_VERSION = 1, REF_LOGPS_TABLES = 2 };

typedef struct RefTable {
    uint64_t data, count;
    float *logp; /* (count) */
} RefTable;

typedef struct RefLogps {
    uint64_t model;
    int tables;
    RefTable table[REF_LOGPS_TABLES];
} RefLogps;

static inline void ref_logps_free(RefLogps *r) {
    for (int i = 0; i < REF_LOGPS_TABLES; i++) free(r->table[i].logp);
    *r = (RefLogps){0};
}

/* Adds a completion to the hash of a table's data; begin with 0. */
static inline uint64_t ref_logps_data(uint64_t hash, const int32_t *prompt, int32_t prompt_len,
                                      const int32_t *completion, int32_t completion_len) {
    const uint64_t part[] = {hash, (uint64_t)prompt_len, (uint64_t)completion_len,
                             XXH3_64bits(prompt, (size_t)prompt_len * sizeof *prompt),
                             XXH3_64bits(completion, (size_t)completion_len * sizeof *completion)};
    return XXH3_64bits(part, sizeof part);
}

/* Returns the values for this data, or NULL. */
static inline const float *ref_logps_find(const RefLogps *r, uint64_t data, uint64_t count) {
    for (int i = 0; i < r->tables; i++)
        if (r->table[i].data == data && r->table[i].count == count) return r->table[i].logp;
    return NULL;
}

/* XXH3-64 of the model and of all tables; 0 of a file that does not exist, which has none. */
static inline uint64_t ref_logps_hash(const RefLogps *r) {
    uint64_t hash = r->model;
    for (int i = 0; i < r->tables; i++)
        hash = XXH3_64bits_withSeed(r->table[i].logp, (size_t)r->table[i].count * sizeof(float), hash);
    return hash;
}

/* Adds a table and takes ownership of logp. */
static inline void ref_logps_add(RefLogps *r, uint64_t data, uint64_t count, float *logp) {
    assert(r->tables < REF_LOGPS_TABLES);
    r->table[r->tables++] = (RefTable){data, count, logp};
}

static inline bool ref_logps_read_table(RefTable *t, Reader *r, Error *e) {
    uint64_t head[2];
    if (!reader_read(r, head, sizeof head, "table", e)) return false;
    const int64_t left = reader_left(r);
    if (head[1] < 1 || head[1] > INT64_MAX / 8 || (left >= 0 && head[1] * sizeof(float) > (uint64_t)left))
        return error_set(e, "%s: a table has %llu values, which do not fit into the file", r->name,
                         (unsigned long long)head[1]);
    t->data = head[0];
    t->count = head[1];
    t->logp = (float *)reader_blob(r, head[1] * sizeof(float), "log-probabilities", e);
    return t->logp != NULL;
}

static inline bool ref_logps_body(RefLogps *l, Reader *r, Error *e) {
    int32_t head[16];
    char text[FILE_KIND_TEXT];
    if (!reader_read(r, head, sizeof head, "header", e)) return false;
    if (head[0] != REF_LOGPS_MAGIC)
        return error_set(e, "%s: this is %s, expected reference log-probabilities", r->name, reader_kind(r, text));
    if (head[1] != REF_LOGPS_VERSION)
        return error_set(e, "%s: version is %d, expected %d", r->name, (int)head[1], REF_LOGPS_VERSION);
    if (head[2] < 1 || head[2] > REF_LOGPS_TABLES)
        return error_set(e, "%s: has %d tables, expected 1 to %d", r->name, (int)head[2], REF_LOGPS_TABLES);
    for (int i = 3; i < 16; i = i == 3 ? 6 : i + 1)
        if (head[i]) return error_set(e, "%s: header field %d is %d, expected 0", r->name, i, (int)head[i]);
    memcpy(&l->model, head + 4, sizeof l->model);
    for (int i = 0; i < head[2]; i++, l->tables++)
        if (!ref_logps_read_table(&l->table[i], r, e)) return false;
    if (!reader_checksum(r, e)) return false;
    for (int i = 0; i < l->tables; i++)
        for (uint64_t k = 0; k < l->table[i].count; k++)
            if (!(l->table[i].logp[k] <= 1e-3f)) /* at most 0, up to rounding */
                return error_set(e, "%s: value %llu is %g, expected a log-probability", r->name, (unsigned long long)k,
                                 (double)l->table[i].logp[k]);
    return true;
}

/* Reads the file `path`. On failure no memory stays allocated. */
static inline bool ref_logps_read(RefLogps *l, const char *path, Error *e) {
    Reader r;
    *l = (RefLogps){0};
    if (!reader_open(&r, path, e)) return false;
    const bool ok = ref_logps_body(l, &r, e);
    reader_close(&r);
    if (!ok) ref_logps_free(l);
    return ok;
}

/* Writes the file `path`, which appears only when all of it is on disk. */
static inline bool ref_logps_write(const RefLogps *l, const char *path, Error *e) {
    Writer w;
    int32_t head[16] = {REF_LOGPS_MAGIC, REF_LOGPS_VERSION, l->tables};
    if (!writer_open(&w, path, e)) return false;
    memcpy(head + 4, &l->model, sizeof l->model);
    bool ok = writer_write(&w, head, sizeof head, e);
    for (int i = 0; ok && i < l->tables; i++) {
        const RefTable *t = &l->table[i];
        const uint64_t about[] = {t->data, t->count};
        ok = writer_write(&w, about, sizeof about, e) && writer_write(&w, t->logp, t->count * sizeof *t->logp, e);
    }
    if (ok && writer_checksum(&w, e)) return writer_commit(&w, e);
    writer_abort(&w);
    return false;
}

#endif
