/* gguf.h - the GGUF file format, in which llama.cpp and ollama keep models: a memory-mapped reader and a writer.
 *
 *    bytes    content (all numbers little-endian)
 *    4        "GGUF"
 *    4        version: 3, or 2, which is the same; version 1, with 32-bit counts, and big-endian files are refused
 *    8, 8     number of tensors, number of metadata entries
 *    ...      entries:  key (a string: 8 bytes of length, then its bytes), 4 bytes of type, value
 *    ...      tensors:  name (a string), 4 bytes: number of dimensions, 8 bytes for each, the fastest one first, 4 bytes
 *             of block type (quantized.h), 8 bytes of offset
 *    ...      padding to a multiple of the alignment (the entry general.alignment, or 32), then the data of the tensors;
 *             offsets count from there and are multiples of the alignment
 *
 *    type of value    0 uint8, 1 int8, 2 uint16, 3 int16, 4 uint32, 5 int32, 6 float32, 7 bool (a byte), 8 string,
 *                     9 array (4 bytes: type of the elements, not 9; 8 bytes: number; the elements), 10 uint64,
 *                     11 int64, 12 float64
 *
 * A matrix (out, in) has the dimensions {in, out}: its data are row-major. The source is ggml's docs/gguf.md. The reader
 * checks every length against the file, that keys and names are unique, and that tensors are inside the file, aligned
 * and do not overlap. Opening reads the head of the file only; a tensor's pages are read when they are used, and
 * the file must not be truncated meanwhile. A file that cannot be mapped (a pipe, a zstd stream) is read into memory.
 *
 *     Gguf g;
 *     TextSlice name = {"", 0};
 *     if (!gguf_open(&g, "model.gguf", &e)) return false;
 *     bool ok = gguf_get_text(&g, "general.name", &name, &e);
 *     const GgufTensor *t = gguf_tensor(&g, "output_norm.weight");
 *     float *norm = (float *)xmalloc(t->elements * sizeof(float));
 *     quant_decode(t->type, t->data, norm, t->elements);
 *     gguf_close(&g);
 *
 * Writing: first all entries and the table of tensors, then the values of the tensors in the order of the table.
 *
 *     GgufWriter w;
 *     float norm[64] = {1};
 *     gguf_create(&w);
 *     gguf_put_text(&w, "general.architecture", gguf_text("llama"));
 *     gguf_plan(&w, "output_norm.weight", QUANT_F32, 1, (const size_t[]){64});
 *     bool ok = gguf_begin(&w, "out.gguf", &e) && gguf_put_values(&w, norm, 64, &e) && gguf_commit(&w, &e);
 *     gguf_abort(&w);                                         // also after a failure or a commit
 */
#ifndef LLMC_MODEL_GGUF_H
#define LLMC_MODEL_GGUF_H

#include "../base/error.h" /* Error, error_set, xmalloc, size_multiply, ... */
#include "../base/io.h"    /* writer_write, Writer, file_slurp, writer_abort, ... */
#include "../base/text.h"  /* TextSlice, text_append, TextBuffer, text_free, ... */
#include "backend.h"       /* QuantType */
#include "quantized.h"     /* quant_info, quant_bytes, QuantInfo, quant_encode, ... */
#include <assert.h>
#include <math.h>
#include <sys/mman.h>

typedef enum {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_KINDS
} GgufKind;

enum { GGUF_VERSION = 3, GGUF_ALIGNMENT = 32, GGUF_DIMS = 4, GGUF_NAME_MAX = 64, GGUF_KEY_MAX = 65535 };

/* An entry of the metadata. */
typedef struct GgufEntry {
    TextSlice key;
    GgufKind kind; /* of the value, or of an array's elements */
    bool array;
    uint64_t count;       /* elements; 1 if it is not an array */
    const uint8_t *data;  /* the first element, unaligned; a string is 8 bytes of length and its bytes */
    const uint8_t *value; /* what follows the entry's type in the file: an array's type and count, then the data */
    size_t value_bytes;
} GgufEntry;

typedef struct GgufTensor {
    TextSlice name;
    QuantType type;
    int dims;
    size_t ne[GGUF_DIMS]; /* ne[0] is the length of a row; 1 beyond `dims` */
    size_t elements, bytes;
    uint64_t offset;
    const uint8_t *data; /* unaligned if the file was not mapped */
} GgufTensor;

typedef struct Gguf {
    char *name; /* for messages */
    const uint8_t *file;
    size_t bytes;
    bool mapped;
    void *memory; /* of a file that is not mapped */
    GgufEntry *entries;
    size_t entry_count;
    GgufTensor *tensors;
    size_t tensor_count;
    uint32_t *entry_order, *tensor_order; /* sorted by key and by name */
} Gguf;

static inline TextSlice gguf_text(const char *s) { return (TextSlice){s, strlen(s)}; }

static inline bool gguf_is(TextSlice t, const char *s) {
    const size_t n = strlen(s);
    return t.length == n && !memcmp(t.text, s, n);
}

static inline bool gguf_begins(TextSlice t, const char *s) {
    const size_t n = strlen(s);
    return t.length >= n && !memcmp(t.text, s, n);
}

/* The arguments of "%.*s" for a text, of which a message shows at most 100 bytes. */
#define GGUF_SHOWN(t) (int)((t).length < 100 ? (t).length : 100), (t).text

static inline int gguf_compare(TextSlice a, TextSlice b) {
    const size_t n = a.length < b.length ? a.length : b.length;
    const int order = n ? memcmp(a.text, b.text, n) : 0;
    return order ? order : a.length < b.length ? -1 : a.length > b.length;
}

static inline const char *gguf_kind_name(GgufKind kind) {
    static const char *const name[GGUF_KINDS] = {"uint8",   "int8", "uint16", "int16",  "uint32", "int32",  "float32",
                                                 "boolean", "text", "array",  "uint64", "int64",  "float64"};
    return name[kind];
}

/* Bytes of a number; 0 for strings and arrays. */
static inline size_t gguf_kind_bytes(GgufKind kind) {
    static const uint8_t bytes[GGUF_KINDS] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return bytes[kind];
}

/* ---- reading the head of a file --------------------------------------------------------------------------------- */

/* A position in the file. A read that does not fit fails with a message that names `what`. */
typedef struct GgufCursor {
    const Gguf *g;
    size_t at;
} GgufCursor;

static inline size_t gguf_left(const GgufCursor *c) { return c->g->bytes - c->at; }

static inline const uint8_t *gguf_take(GgufCursor *c, uint64_t n, const char *what, Error *e) {
    if (n > gguf_left(c)) {
        error_set(e, "%s: %s: needs %llu bytes at byte %zu, the file ends at %zu", c->g->name, what,
                  (unsigned long long)n, c->at, c->g->bytes);
        return NULL;
    }
    const uint8_t *p = c->g->file + c->at;
    c->at += (size_t)n;
    return p;
}

static inline bool gguf_take_u32(GgufCursor *c, uint32_t *value, const char *what, Error *e) {
    const uint8_t *p = gguf_take(c, sizeof *value, what, e);
    if (p) memcpy(value, p, sizeof *value);
    return p != NULL;
}

static inline bool gguf_take_u64(GgufCursor *c, uint64_t *value, const char *what, Error *e) {
    const uint8_t *p = gguf_take(c, sizeof *value, what, e);
    if (p) memcpy(value, p, sizeof *value);
    return p != NULL;
}

static inline bool gguf_take_text(GgufCursor *c, TextSlice *t, const char *what, Error *e) {
    uint64_t n;
    if (!gguf_take_u64(c, &n, what, e)) return false;
    t->text = (const char *)gguf_take(c, n, what, e);
    t->length = (size_t)n;
    return t->text != NULL;
}

/* A key or a name: 1 to `longest` bytes without control characters, which also makes it safe to print. */
static inline bool gguf_take_name(GgufCursor *c, TextSlice *t, size_t longest, const char *what, Error *e) {
    const size_t at = c->at;
    if (!gguf_take_text(c, t, what, e)) return false;
    if (!t->length || t->length > longest)
        return error_set(e, "%s: %s at byte %zu has %zu bytes, expected 1 to %zu", c->g->name, what, at, t->length,
                         longest);
    for (size_t i = 0; i < t->length; i++)
        if ((uint8_t)t->text[i] < 0x20 || t->text[i] == 0x7f)
            return error_set(e, "%s: %s at byte %zu has the control character 0x%02x", c->g->name, what, at,
                             (unsigned)(uint8_t)t->text[i]);
    return true;
}

/* Moves over `count` elements. */
static inline bool gguf_take_elements(GgufCursor *c, GgufKind kind, uint64_t count, const char *what, Error *e) {
    const size_t bytes = gguf_kind_bytes(kind), least = bytes ? bytes : sizeof(uint64_t);
    if (count > gguf_left(c) / least)
        return error_set(e, "%s: %s: %llu elements of type %s at byte %zu, the file ends at %zu", c->g->name, what,
                         (unsigned long long)count, gguf_kind_name(kind), c->at, c->g->bytes);
    if (bytes) return gguf_take(c, count * bytes, what, e) != NULL;
    for (uint64_t i = 0; i < count; i++) {
        TextSlice text;
        if (!gguf_take_text(c, &text, what, e)) return false;
    }
    return true;
}

static inline bool gguf_take_kind(GgufCursor *c, GgufKind *kind, const char *what, Error *e) {
    uint32_t value;
    if (!gguf_take_u32(c, &value, what, e)) return false;
    *kind = (GgufKind)value;
    return value < GGUF_KINDS ||
           error_set(e, "%s: %s has values of type %u, expected 0 to %d", c->g->name, what, value, GGUF_KINDS - 1);
}

static inline bool gguf_take_entry(GgufCursor *c, GgufEntry *entry, Error *e) {
    char what[160];
    if (!gguf_take_name(c, &entry->key, GGUF_KEY_MAX, "the key of an entry", e)) return false;
    snprintf(what, sizeof what, "entry %.*s", GGUF_SHOWN(entry->key));
    if (!gguf_take_kind(c, &entry->kind, what, e)) return false;
    const size_t begin = c->at;
    entry->array = entry->kind == GGUF_ARRAY;
    entry->count = 1;
    if (entry->array && (!gguf_take_kind(c, &entry->kind, what, e) || !gguf_take_u64(c, &entry->count, what, e)))
        return false;
    if (entry->kind == GGUF_ARRAY)
        return error_set(e, "%s: %s is an array of arrays, which is not supported", c->g->name, what);
    entry->data = c->g->file + c->at;
    if (!gguf_take_elements(c, entry->kind, entry->count, what, e)) return false;
    entry->value = c->g->file + begin;
    entry->value_bytes = c->at - begin;
    return true;
}

/* Reads a tensor's dimensions and computes its size. */
static inline bool gguf_take_shape(GgufCursor *c, GgufTensor *t, const char *what, Error *e) {
    uint32_t dims, type;
    if (!gguf_take_u32(c, &dims, what, e)) return false;
    if (!dims || dims > GGUF_DIMS)
        return error_set(e, "%s: %s has %u dimensions, expected 1 to %d", c->g->name, what, dims, GGUF_DIMS);
    t->dims = (int)dims;
    t->elements = 1;
    for (int i = 0; i < GGUF_DIMS; i++) {
        uint64_t n = 1;
        if (i < t->dims && !gguf_take_u64(c, &n, what, e)) return false;
        t->ne[i] = (size_t)n;
        if (!n || n > INT64_MAX || !size_multiply(t->elements, (size_t)n, &t->elements) || t->elements > INT64_MAX)
            return error_set(e, "%s: %s: dimension %d is %llu, which is not possible", c->g->name, what, i,
                             (unsigned long long)n);
    }
    if (!gguf_take_u32(c, &type, what, e)) return false;
    if (!quant_of_gguf(type, &t->type)) {
        const char *known = quant_gguf_name(type);
        return error_set(e,
                         "%s: %s has the block type %u (%s), which is not supported; F32, F16, BF16, Q4_0, Q4_1, "
                         "Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are",
                         c->g->name, what, type, known ? known : "unknown");
    }
    const QuantInfo *info = quant_info(t->type);
    if (t->ne[0] % info->values)
        return error_set(e, "%s: %s: rows of %zu elements are not whole blocks of %u (%s)", c->g->name, what, t->ne[0],
                         info->values, info->name);
    return size_multiply(t->elements / info->values, info->bytes, &t->bytes) ||
           error_set(e, "%s: %s has %zu elements, which is not possible", c->g->name, what, t->elements);
}

static inline bool gguf_take_tensor(GgufCursor *c, GgufTensor *t, Error *e) {
    char what[160];
    if (!gguf_take_name(c, &t->name, GGUF_NAME_MAX, "the name of a tensor", e)) return false;
    snprintf(what, sizeof what, "tensor %.*s", GGUF_SHOWN(t->name));
    return gguf_take_shape(c, t, what, e) && gguf_take_u64(c, &t->offset, what, e);
}

/* ---- sorted tables ---------------------------------------------------------------------------------------------- */

static inline int gguf_by_key(const void *a, const void *b, void *g) {
    const GgufEntry *entries = ((const Gguf *)g)->entries;
    return gguf_compare(entries[*(const uint32_t *)a].key, entries[*(const uint32_t *)b].key);
}

static inline int gguf_by_name(const void *a, const void *b, void *g) {
    const GgufTensor *tensors = ((const Gguf *)g)->tensors;
    return gguf_compare(tensors[*(const uint32_t *)a].name, tensors[*(const uint32_t *)b].name);
}

static inline int gguf_by_offset(const void *a, const void *b, void *g) {
    const GgufTensor *tensors = ((const Gguf *)g)->tensors;
    const uint64_t x = tensors[*(const uint32_t *)a].offset, y = tensors[*(const uint32_t *)b].offset;
    return x < y ? -1 : x > y;
}

static inline uint32_t *gguf_sorted(Gguf *g, size_t n, int (*compare)(const void *, const void *, void *)) {
    uint32_t *order = (uint32_t *)xmalloc(n * sizeof *order);
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    if (n) qsort_r(order, n, sizeof *order, compare, g);
    return order;
}

/* Returns the entry with this key, or NULL. */
static inline const GgufEntry *gguf_find(const Gguf *g, const char *key) {
    size_t low = 0, high = g->entry_count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        const GgufEntry *entry = &g->entries[g->entry_order[middle]];
        const int order = gguf_compare(entry->key, gguf_text(key));
        if (!order) return entry;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

/* Returns the tensor with this name, or NULL. */
static inline const GgufTensor *gguf_tensor(const Gguf *g, const char *name) {
    size_t low = 0, high = g->tensor_count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        const GgufTensor *tensor = &g->tensors[g->tensor_order[middle]];
        const int order = gguf_compare(tensor->name, gguf_text(name));
        if (!order) return tensor;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

static inline bool gguf_unique(const Gguf *g, Error *e) {
    for (size_t i = 1; i < g->entry_count; i++) {
        const TextSlice key = g->entries[g->entry_order[i]].key;
        if (!gguf_compare(g->entries[g->entry_order[i - 1]].key, key))
            return error_set(e, "%s: the key %.*s occurs twice", g->name, GGUF_SHOWN(key));
    }
    for (size_t i = 1; i < g->tensor_count; i++) {
        const TextSlice name = g->tensors[g->tensor_order[i]].name;
        if (!gguf_compare(g->tensors[g->tensor_order[i - 1]].name, name))
            return error_set(e, "%s: tensor %.*s occurs twice", g->name, GGUF_SHOWN(name));
    }
    return true;
}

/* ---- values of entries ------------------------------------------------------------------------------------------ */

static inline bool gguf_kind_is_integer(GgufKind kind) {
    return kind != GGUF_F32 && kind != GGUF_F64 && kind != GGUF_STRING && kind != GGUF_ARRAY;
}

/* Returns element i of integers or booleans. A uint64 above INT64_MAX becomes INT64_MAX. */
static inline int64_t gguf_integer_at(const GgufEntry *entry, uint64_t i) {
    const uint8_t *p = entry->data + i * gguf_kind_bytes(entry->kind);
    uint64_t bits = 0;
    memcpy(&bits, p, gguf_kind_bytes(entry->kind));
    switch (entry->kind) {
    case GGUF_I8: return (int8_t)bits;
    case GGUF_I16: return (int16_t)bits;
    case GGUF_I32: return (int32_t)bits;
    case GGUF_I64: return (int64_t)bits;
    default: return bits > INT64_MAX ? INT64_MAX : (int64_t)bits;
    }
}

/* Returns element i of numbers of any type. */
static inline double gguf_number_at(const GgufEntry *entry, uint64_t i) {
    float single;
    double number;
    if (entry->kind == GGUF_F32) {
        memcpy(&single, entry->data + i * sizeof single, sizeof single);
        return (double)single;
    }
    if (entry->kind != GGUF_F64) return (double)gguf_integer_at(entry, i);
    memcpy(&number, entry->data + i * sizeof number, sizeof number);
    return number;
}

static inline bool gguf_wrong_kind(const Gguf *g, const GgufEntry *entry, const char *expected, Error *e) {
    return error_set(e, "%s: entry %.*s is %s%s, expected %s", g->name, GGUF_SHOWN(entry->key),
                     entry->array ? "an array of type " : "of type ", gguf_kind_name(entry->kind), expected);
}

/* The functions gguf_get_...() leave *value as it is if the file has no such entry, which is no error. An entry of
 * another type or outside the bounds is one. */

/* Reads an integer; an array is allowed if all its elements are equal, as in the entries that some files have per
 * layer. */
static inline bool gguf_get_integer(const Gguf *g, const char *key, int64_t low, int64_t high, int64_t *value,
                                    Error *e) {
    const GgufEntry *entry = gguf_find(g, key);
    if (!entry) return true;
    if (!gguf_kind_is_integer(entry->kind)) return gguf_wrong_kind(g, entry, "an integer", e);
    if (!entry->count) return error_set(e, "%s: entry %s is an empty array, expected an integer", g->name, key);
    const int64_t found = gguf_integer_at(entry, 0);
    for (uint64_t i = 1; i < entry->count; i++)
        if (gguf_integer_at(entry, i) != found)
            return error_set(e, "%s: entry %s differs between layers (%lld and %lld), which is not supported", g->name,
                             key, (long long)found, (long long)gguf_integer_at(entry, i));
    if (found < low || found > high)
        return error_set(e, "%s: entry %s is %lld, expected %lld to %lld", g->name, key, (long long)found,
                         (long long)low, (long long)high);
    *value = found;
    return true;
}

/* Reads a finite number of any numeric type. */
static inline bool gguf_get_number(const Gguf *g, const char *key, double low, double high, double *value, Error *e) {
    const GgufEntry *entry = gguf_find(g, key);
    if (!entry) return true;
    if (entry->array || entry->kind == GGUF_STRING || entry->kind == GGUF_BOOL)
        return gguf_wrong_kind(g, entry, "a number", e);
    const double found = gguf_number_at(entry, 0);
    if (!(found >= low && found <= high))
        return error_set(e, "%s: entry %s is %g, expected %g to %g", g->name, key, found, low, high);
    *value = found;
    return true;
}

static inline bool gguf_get_flag(const Gguf *g, const char *key, bool *value, Error *e) {
    const GgufEntry *entry = gguf_find(g, key);
    if (!entry) return true;
    if (entry->array || entry->kind != GGUF_BOOL) return gguf_wrong_kind(g, entry, "a boolean", e);
    if (*entry->data > 1) return error_set(e, "%s: entry %s is %u, expected 0 or 1", g->name, key, *entry->data);
    *value = *entry->data;
    return true;
}

static inline TextSlice gguf_text_after(const uint8_t *p) {
    uint64_t n;
    memcpy(&n, p, sizeof n);
    return (TextSlice){(const char *)p + sizeof n, (size_t)n};
}

static inline bool gguf_get_text(const Gguf *g, const char *key, TextSlice *value, Error *e) {
    const GgufEntry *entry = gguf_find(g, key);
    if (!entry) return true;
    if (entry->array || entry->kind != GGUF_STRING) return gguf_wrong_kind(g, entry, "a text", e);
    *value = gguf_text_after(entry->data);
    return true;
}

static inline bool gguf_array_of(const Gguf *g, const GgufEntry *entry, bool fits, const char *expected, size_t *n,
                                 Error *e) {
    if (!entry->array || !fits) return gguf_wrong_kind(g, entry, expected, e);
    *n = (size_t)entry->count;
    return true;
}

/* Reads an array of texts into new memory, to be freed by the caller. */
static inline bool gguf_get_texts(const Gguf *g, const char *key, TextSlice **values, size_t *n, Error *e) {
    const GgufEntry *entry = gguf_find(g, key);
    if (!entry) return true;
    if (!gguf_array_of(g, entry, entry->kind == GGUF_STRING, "an array of texts", n, e)) return false;
    const uint8_t *p = entry->data;
    *values = (TextSlice *)xmalloc(*n * sizeof **values);
    for (size_t i = 0; i < *n; i++) {
        (*values)[i] = gguf_text_after(p);
        p += sizeof(uint64_t) + (*values)[i].length;
    }
    return true;
}

/* Reads an array of integers that fit into int32 into new memory. */
static inline bool gguf_get_integers(const Gguf *g, const char *key, int32_t **values, size_t *n, Error *e) {
    const GgufEntry *entry = gguf_find(g, key);
    if (!entry) return true;
    if (!gguf_array_of(g, entry, gguf_kind_is_integer(entry->kind), "an array of integers", n, e)) return false;
    *values = (int32_t *)xmalloc(*n * sizeof **values);
    for (size_t i = 0; i < *n; i++) {
        const int64_t v = gguf_integer_at(entry, i);
        if (v < INT32_MIN || v > INT32_MAX)
            return error_set(e, "%s: element %zu of entry %s is %lld, which does not fit into 32 bits", g->name, i, key,
                             (long long)v);
        (*values)[i] = (int32_t)v;
    }
    return true;
}

/* Reads an array of numbers into new memory. */
static inline bool gguf_get_numbers(const Gguf *g, const char *key, float **values, size_t *n, Error *e) {
    const GgufEntry *entry = gguf_find(g, key);
    if (!entry) return true;
    if (!gguf_array_of(g, entry, entry->kind != GGUF_STRING, "an array of numbers", n, e)) return false;
    *values = (float *)xmalloc(*n * sizeof **values);
    for (size_t i = 0; i < *n; i++) (*values)[i] = (float)gguf_number_at(entry, i);
    return true;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static inline void gguf_close(Gguf *g) {
    if (g->mapped) munmap((void *)(uintptr_t)g->file, g->bytes);
    free(g->memory), free(g->name), free(g->entries), free(g->tensors), free(g->entry_order), free(g->tensor_order);
    *g = (Gguf){0};
}

static inline bool gguf_check_version(GgufCursor *c, Error *e) {
    uint32_t version;
    const uint8_t *magic = gguf_take(c, 4, "magic number", e);
    if (!magic) return false;
    if (memcmp(magic, "GGUF", 4)) return error_set(e, "%s: does not begin with \"GGUF\"", c->g->name);
    if (!gguf_take_u32(c, &version, "version", e)) return false;
    if (version && !(version & 0xffff))
        return error_set(e, "%s: is a big-endian GGUF file, which is not supported", c->g->name);
    return version == 2 || version == GGUF_VERSION ||
           error_set(e, "%s: is version %u of GGUF, expected 2 or 3", c->g->name, version);
}

/* Allocates a table of n elements, each of which needs at least `least` bytes of the file. */
static inline void *gguf_table(const GgufCursor *c, uint64_t n, size_t least, size_t size, const char *what, Error *e) {
    if (n <= gguf_left(c) / least && n < UINT32_MAX) return xcalloc((size_t)n, size);
    error_set(e, "%s: %llu %s do not fit into its %zu bytes", c->g->name, (unsigned long long)n, what, c->g->bytes);
    return NULL;
}

/* Checks the place of each tensor's data, which begin at byte `data` of the file. */
static inline bool gguf_place(Gguf *g, size_t data, uint64_t alignment, Error *e) {
    uint64_t end = 0;
    bool ok = true;
    uint32_t *order = gguf_sorted(g, g->tensor_count, gguf_by_offset);
    for (size_t i = 0; ok && i < g->tensor_count; i++) {
        GgufTensor *t = &g->tensors[order[i]];
        if (t->offset % alignment)
            ok = error_set(e, "%s: tensor %.*s: its offset of %llu is not a multiple of %llu", g->name,
                           GGUF_SHOWN(t->name), (unsigned long long)t->offset, (unsigned long long)alignment);
        else if (data > g->bytes || t->offset > g->bytes - data || t->bytes > g->bytes - data - t->offset)
            ok = error_set(e, "%s: tensor %.*s: needs %zu bytes at offset %llu, the file ends at %zu", g->name,
                           GGUF_SHOWN(t->name), t->bytes, (unsigned long long)t->offset, g->bytes);
        else if (t->offset < end)
            ok = error_set(e, "%s: tensors %.*s and %.*s overlap", g->name, GGUF_SHOWN(g->tensors[order[i - 1]].name),
                           GGUF_SHOWN(t->name));
        else {
            t->data = g->file + data + t->offset;
            end = t->offset + t->bytes;
        }
    }
    free(order);
    return ok;
}

static inline bool gguf_read(Gguf *g, Error *e) {
    GgufCursor c = {g, 0};
    uint64_t tensors, entries;
    int64_t alignment = GGUF_ALIGNMENT;
    if (!gguf_check_version(&c, e) || !gguf_take_u64(&c, &tensors, "number of tensors", e) ||
        !gguf_take_u64(&c, &entries, "number of entries", e))
        return false;
    g->entries = (GgufEntry *)gguf_table(&c, entries, 14, sizeof *g->entries, "entries", e);
    if (!g->entries) return false;
    for (; g->entry_count < entries; g->entry_count++)
        if (!gguf_take_entry(&c, &g->entries[g->entry_count], e)) return false;
    g->tensors = (GgufTensor *)gguf_table(&c, tensors, 33, sizeof *g->tensors, "tensors", e);
    if (!g->tensors) return false;
    for (; g->tensor_count < tensors; g->tensor_count++)
        if (!gguf_take_tensor(&c, &g->tensors[g->tensor_count], e)) return false;
    g->entry_order = gguf_sorted(g, g->entry_count, gguf_by_key);
    g->tensor_order = gguf_sorted(g, g->tensor_count, gguf_by_name);
    if (!gguf_unique(g, e) || !gguf_get_integer(g, "general.alignment", 1, 1 << 30, &alignment, e)) return false;
    if (alignment & (alignment - 1))
        return error_set(e, "%s: general.alignment is %lld, expected a power of two", g->name, (long long)alignment);
    return gguf_place(g, c.at + (size_t)(-(int64_t)c.at & (alignment - 1)), (uint64_t)alignment, e);
}

/* Reads from memory, which must outlive the reader. */
static inline bool gguf_memory(Gguf *g, const void *data, size_t n, Error *e) {
    *g = (Gguf){.name = xstrdup("memory"), .file = (const uint8_t *)data, .bytes = n};
    if (gguf_read(g, e)) return true;
    gguf_close(g);
    return false;
}

/* Maps a regular file; false without a message if it cannot be mapped. */
static inline bool gguf_map(Gguf *g, const char *path) {
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p != MAP_FAILED) {
            g->file = (const uint8_t *)p;
            g->bytes = (size_t)st.st_size;
            g->mapped = true;
        }
    }
    close(fd);
    return g->mapped;
}

static inline bool gguf_is_zstd(const Gguf *g) {
    uint32_t magic = 0;
    if (g->bytes >= sizeof magic) memcpy(&magic, g->file, sizeof magic);
    return magic == ZSTD_MAGICNUMBER || (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

/* Opens a file; "-" is standard input. A pipe or a zstd stream may fill half of the machine's memory. On failure nothing
 * stays open. */
static inline bool gguf_open(Gguf *g, const char *path, Error *e) {
    const bool standard = !strcmp(path, "-");
    *g = (Gguf){.name = xstrdup(standard ? "standard input" : path)};
    if (standard || !gguf_map(g, path) || gguf_is_zstd(g)) {
        const size_t limit = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / 2;
        if (g->mapped) munmap((void *)(uintptr_t)g->file, g->bytes);
        g->mapped = false;
        g->bytes = 0;
        g->memory = file_slurp(path, limit, &g->bytes, e);
        g->file = (const uint8_t *)g->memory;
    }
    if (g->file && gguf_read(g, e)) return true;
    gguf_close(g);
    return false;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

/* A tensor of the file to be written. */
typedef struct GgufPlan {
    char name[GGUF_NAME_MAX + 1];
    QuantType type;
    size_t elements, row; /* row: elements of a row */
} GgufPlan;

typedef struct GgufWriter {
    Writer out;
    bool open;
    TextBuffer entries, tensors; /* these parts of the file's head */
    uint64_t entry_count, offset;
    GgufPlan *plan;
    size_t plan_count, plan_capacity, current; /* current: the tensor to which values go */
    size_t done;                               /* its elements that were written */
    uint8_t *blocks;                           /* of GGUF_PIECE elements */
} GgufWriter;

enum { GGUF_PIECE = 1 << 14 }; /* elements that are encoded at a time: whole blocks of every type */

static inline void gguf_create(GgufWriter *w) { *w = (GgufWriter){.blocks = (uint8_t *)xmalloc(4 * GGUF_PIECE)}; }

/* Discards a file that was not committed and frees the writer. */
static inline void gguf_abort(GgufWriter *w) {
    if (w->open) writer_abort(&w->out);
    text_free(&w->entries), text_free(&w->tensors), free(w->plan), free(w->blocks);
    *w = (GgufWriter){0};
}

static inline void gguf_append_u32(TextBuffer *b, uint32_t v) { text_append(b, (const char *)&v, sizeof v); }
static inline void gguf_append_u64(TextBuffer *b, uint64_t v) { text_append(b, (const char *)&v, sizeof v); }

static inline void gguf_append_text(TextBuffer *b, TextSlice t) {
    gguf_append_u64(b, t.length);
    text_append(b, t.text, t.length);
}

static inline void gguf_put_key(GgufWriter *w, TextSlice key, GgufKind kind) {
    gguf_append_text(&w->entries, key);
    gguf_append_u32(&w->entries, (uint32_t)kind);
    w->entry_count++;
}

static inline void gguf_put_u32(GgufWriter *w, const char *key, uint32_t value) {
    gguf_put_key(w, gguf_text(key), GGUF_U32);
    gguf_append_u32(&w->entries, value);
}

static inline void gguf_put_f32(GgufWriter *w, const char *key, float value) {
    gguf_put_key(w, gguf_text(key), GGUF_F32);
    text_append(&w->entries, (const char *)&value, sizeof value);
}

static inline void gguf_put_flag(GgufWriter *w, const char *key, bool value) {
    gguf_put_key(w, gguf_text(key), GGUF_BOOL);
    text_append(&w->entries, value ? "\1" : "\0", 1);
}

static inline void gguf_put_text(GgufWriter *w, const char *key, TextSlice value) {
    gguf_put_key(w, gguf_text(key), GGUF_STRING);
    gguf_append_text(&w->entries, value);
}

static inline void gguf_put_array(GgufWriter *w, const char *key, GgufKind kind, size_t n) {
    gguf_put_key(w, gguf_text(key), GGUF_ARRAY);
    gguf_append_u32(&w->entries, (uint32_t)kind);
    gguf_append_u64(&w->entries, n);
}

static inline void gguf_put_texts(GgufWriter *w, const char *key, const TextSlice *values, size_t n) {
    gguf_put_array(w, key, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) gguf_append_text(&w->entries, values[i]);
}

static inline void gguf_put_integers(GgufWriter *w, const char *key, const int32_t *values, size_t n) {
    gguf_put_array(w, key, GGUF_I32, n);
    text_append(&w->entries, (const char *)values, n * sizeof *values);
}

static inline void gguf_put_numbers(GgufWriter *w, const char *key, const float *values, size_t n) {
    gguf_put_array(w, key, GGUF_F32, n);
    text_append(&w->entries, (const char *)values, n * sizeof *values);
}

/* Copies an entry of another file. */
static inline void gguf_put_entry(GgufWriter *w, const GgufEntry *entry) {
    gguf_put_key(w, entry->key, entry->array ? GGUF_ARRAY : entry->kind);
    text_append(&w->entries, (const char *)entry->value, entry->value_bytes);
}

static inline uint64_t gguf_padding(uint64_t bytes) { return -bytes & (GGUF_ALIGNMENT - 1); }

/* Adds a tensor to the table. ne[0] is the length of a row, a multiple of the elements of a block of `type`, which
 * quant_encode() must be able to write. name: at most GGUF_NAME_MAX - 1 bytes, the limit of ggml. */
static inline void gguf_plan(GgufWriter *w, const char *name, QuantType type, int dims, const size_t *ne) {
    if (w->plan_count == w->plan_capacity) {
        w->plan_capacity = 2 * w->plan_capacity + 64;
        w->plan = (GgufPlan *)xrealloc(w->plan, w->plan_capacity, sizeof *w->plan);
    }
    GgufPlan *p = &w->plan[w->plan_count++];
    *p = (GgufPlan){.type = type, .elements = 1, .row = ne[0]};
    assert(quant_info(type)->encodes && ne[0] % quant_info(type)->values == 0 && strlen(name) < GGUF_NAME_MAX);
    strcpy(p->name, name);
    gguf_append_text(&w->tensors, gguf_text(name));
    gguf_append_u32(&w->tensors, (uint32_t)dims);
    for (int i = 0; i < dims; i++) {
        gguf_append_u64(&w->tensors, ne[i]);
        p->elements *= ne[i];
    }
    gguf_append_u32(&w->tensors, quant_info(type)->gguf);
    gguf_append_u64(&w->tensors, w->offset);
    w->offset += quant_bytes(type, p->elements);
    w->offset += gguf_padding(w->offset);
}

static inline bool gguf_pad(GgufWriter *w, Error *e) {
    static const uint8_t zeros[GGUF_ALIGNMENT];
    return writer_write(&w->out, zeros, (size_t)gguf_padding(w->out.position), e);
}

/* Opens the file and writes its head. */
static inline bool gguf_begin(GgufWriter *w, const char *path, Error *e) {
    TextBuffer head = {0};
    if (!writer_open(&w->out, path, e)) return false;
    w->open = true;
    text_string(&head, "GGUF");
    gguf_append_u32(&head, GGUF_VERSION);
    gguf_append_u64(&head, w->plan_count);
    gguf_append_u64(&head, w->entry_count);
    const bool ok = writer_write(&w->out, head.text, head.length, e) &&
                    writer_write(&w->out, w->entries.text, w->entries.length, e) &&
                    writer_write(&w->out, w->tensors.text, w->tensors.length, e) && gguf_pad(w, e);
    text_free(&head);
    return ok;
}

/* Checks that all values can be stored, because a value that became infinite would destroy the model. */
static inline bool gguf_check_values(const GgufWriter *w, const GgufPlan *p, const float *values, size_t n, Error *e) {
    const float limit = quant_limit(p->type);
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(values[i]) <= limit))
            return error_set(e, "%s: tensor %s has the value %g, which %s cannot store", w->out.name, p->name,
                             (double)values[i], quant_info(p->type)->name);
    return true;
}

/* Writes the next n values of the current tensor, whole blocks. After its last value the next tensor is the current
 * one. */
static inline bool gguf_put_values(GgufWriter *w, const float *values, size_t n, Error *e) {
    while (n) {
        assert(w->current < w->plan_count);
        const GgufPlan *p = &w->plan[w->current];
        const size_t left = p->elements - w->done, most = left < GGUF_PIECE ? left : GGUF_PIECE;
        const size_t piece = n < most ? n : most;
        assert(piece % quant_info(p->type)->values == 0);
        if (!gguf_check_values(w, p, values, piece, e)) return false;
        quant_encode(p->type, values, w->blocks, piece);
        if (!writer_write(&w->out, w->blocks, quant_bytes(p->type, piece), e)) return false;
        values += piece;
        n -= piece;
        w->done += piece;
        if (w->done < p->elements) continue;
        if (!gguf_pad(w, e)) return false;
        w->done = 0;
        w->current++;
    }
    return true;
}

/* Makes the file appear under its name; all values of all tensors were written. */
static inline bool gguf_commit(GgufWriter *w, Error *e) {
    assert(w->open && w->current == w->plan_count);
    w->open = false;
    return writer_commit(&w->out, e);
}

#endif
