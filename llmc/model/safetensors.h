/* safetensors.h - reader and writer of safetensors files: a JSON header, then named arrays.
 *
 *   0      uint64   N, at most 100,000,000
 *   8      N bytes  JSON: {"name": {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, ...}; it begins
 *                   with '{' and may end with spaces; "__metadata__" holds an object of texts
 *   8 + N  data     little-endian, row-major; data_offsets count from here
 *
 * The arrays cover the data from its first to its last byte, without holes and without overlap, and the file ends
 * there. No name occurs twice. The reader refuses everything else, as the Rust library safetensors 0.8 does
 * (safetensors/src/tensor.rs), and a header that names an unknown dtype or field. It accepts all dtypes of that
 * library; values are read from F64, F32, F16 and BF16. A shape has at most 8 dimensions here.
 *
 * The file is mapped into memory and only the pages of the arrays that are read are loaded. It must not be shortened
 * while it is open.
 *
 * The writer needs no seek, so it also writes to a pipe. It sorts the arrays as the library does: by dtype, larger
 * elements first, then by name; and pads the header so that the data begins at a multiple of 8 bytes. Its files are
 * equal, byte for byte, to those of the library.
 *
 *     Safetensors s;
 *     if (!safetensors_open(&s, "model.safetensors", e)) return false;
 *     const SafeTensor *t = safetensors_find(&s, "wte.weight");
 *     if (t) safetensors_floats(t, 0, weights, 8);                // the first 8 elements
 *     safetensors_close(&s);
 *
 *     SafetensorsWriter w = {0};
 *     safetensors_add(&w, "wte.weight", SAFETENSORS_F32, 2, (const uint64_t[]){50257, 768});
 *     if (!safetensors_begin(&w, "out.safetensors", NULL, e)) return false;           // sorts w.tensor
 *     bool ok = true;
 *     for (size_t i = 0; ok && i < w.count; i++)
 *         ok = safetensors_put(&w, data, (size_t)(w.tensor[i].end - w.tensor[i].begin), e);
 *     ok = ok && safetensors_commit(&w, e);
 *     safetensors_abort(&w);                                      // harmless after a commit
 */
#ifndef LLMC_MODEL_SAFETENSORS_H
#define LLMC_MODEL_SAFETENSORS_H

#include "../base/error.h"     /* error_set, Error, xstrdup, checked_object, ... */
#include "../base/file_kind.h" /* FILE_KIND_TEXT, file_kind_text */
#include "../base/half.h"      /* half_from_bf16, half_from_f16, half_to_bf16, half_to_f16 */
#include "../base/io.h"        /* writer_write, Writer, writer_abort, writer_commit, ... */
#include "../base/text.h"      /* text_string, text_format, TextBuffer, text_free */
#include <assert.h>
#include <jansson.h>
#include <math.h>
#include <sys/mman.h>

enum { SAFETENSORS_HEADER_MAX = 100000000, SAFETENSORS_DIMS = 8 };

/* The library's dtypes in the order of its enumeration, by which the writer sorts, and the bits of an element. */
// clang-format off
#define SAFETENSORS_TYPES(T)                                                                                               \
    T(BOOL, 8)        T(F4, 4)    T(F6_E2M3, 6) T(F6_E3M2, 6) T(U8, 8)          T(I8, 8)          T(F8_E5M2, 8)             \
    T(F8_E4M3, 8)     T(F8_E8M0, 8)             T(F8_E4M3FNUZ, 8)               T(F8_E5M2FNUZ, 8) T(I16, 16) T(U16, 16)    \
    T(F16, 16)        T(BF16, 16) T(I32, 32)    T(U32, 32)    T(F32, 32)        T(C64, 64)        T(F64, 64) T(I64, 64)    \
    T(U64, 64)
// clang-format on

typedef enum {
#define T(name, bits) SAFETENSORS_##name,
    SAFETENSORS_TYPES(T)
#undef T
        SAFETENSORS_TYPE_COUNT
} SafetensorsType;

static inline const char *safetensors_type_name(SafetensorsType type) {
    static const char *const name[] = {
#define T(name, bits) #name,
        SAFETENSORS_TYPES(T)
#undef T
    };
    return name[type];
}

static inline uint64_t safetensors_type_bits(SafetensorsType type) {
    static const uint8_t bits[] = {
#define T(name, bits) bits,
        SAFETENSORS_TYPES(T)
#undef T
    };
    return bits[type];
}

/* Whether values of this dtype can be read as float32. */
static inline bool safetensors_type_is_float(SafetensorsType type) {
    return type == SAFETENSORS_F64 || type == SAFETENSORS_F32 || type == SAFETENSORS_F16 || type == SAFETENSORS_BF16;
}

typedef struct SafeTensor {
    char *name;
    SafetensorsType type;
    int dims;
    uint64_t shape[SAFETENSORS_DIMS];
    uint64_t begin, end; /* bytes from the beginning of the data */
    uint64_t elements;
    const uint8_t *data; /* at `begin`; not aligned; NULL in a writer */
} SafeTensor;

/* Elements and bytes of a shape. Returns false if they exceed 2^62, or if 4- and 6-bit elements fill no whole bytes. */
static inline bool safetensors_size(SafetensorsType type, int dims, const uint64_t *shape, uint64_t *elements,
                                    uint64_t *bytes) {
    uint64_t n = 1, bits;
    for (int i = 0; i < dims; i++)
        if (__builtin_mul_overflow(n, shape[i], &n)) return false;
    if (__builtin_mul_overflow(n, safetensors_type_bits(type), &bits) || bits % 8) return false;
    *elements = n;
    *bytes = bits / 8;
    return true;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

typedef struct Safetensors {
    char *name;         /* for messages */
    json_t *metadata;   /* object of texts, or NULL */
    SafeTensor *tensor; /* in the order of the data */
    size_t count;
    uint64_t data_bytes;
    /* private */
    const uint8_t *file;
    size_t file_bytes;
    bool mapped;
    size_t *by_name; /* indices into tensor, sorted by name */
} Safetensors;

static inline void safetensors_close(Safetensors *s) {
    if (s->mapped) munmap((void *)s->file, s->file_bytes);
    for (size_t i = 0; i < s->count; i++) free(s->tensor[i].name);
    json_decref(s->metadata);
    free(s->tensor), free(s->by_name), free(s->name);
    *s = (Safetensors){0};
}

/* Reads a field that is a list of at most `limit` integers which are not negative. Returns their number, or -1. */
static inline int safetensors_integers(const json_t *list, int limit, uint64_t *to) {
    if (!json_is_array(list) || json_array_size(list) > (size_t)limit) return -1;
    const int n = (int)json_array_size(list);
    for (int i = 0; i < n; i++) {
        const json_t *x = json_array_get(list, (size_t)i);
        if (!json_is_integer(x) || json_integer_value(x) < 0) return -1;
        to[i] = (uint64_t)json_integer_value(x);
    }
    return n;
}

/* Shortens a name from a file for a message. */
static inline int safetensors_shown(const char *name) { return strlen(name) > 200 ? 200 : (int)strlen(name); }

/* Reads one entry of the header, all but its place in memory. */
static inline bool safetensors_entry(const Safetensors *s, const char *name, const json_t *entry, SafeTensor *t,
                                     Error *e) {
    const int shown = safetensors_shown(name);
    const char *key;
    json_t *value;
    if (!json_is_object(entry)) return error_set(e, "%s: %.*s: entry is not a JSON object", s->name, shown, name);
    json_object_foreach((json_t *)entry, key, value) {
        if (strcmp(key, "dtype") && strcmp(key, "shape") && strcmp(key, "data_offsets"))
            return error_set(e, "%s: %.*s: entry has an unknown field \"%.*s\"", s->name, shown, name,
                             safetensors_shown(key), key);
    }
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype) return error_set(e, "%s: %.*s: entry has no dtype", s->name, shown, name);
    *t = (SafeTensor){.type = SAFETENSORS_TYPE_COUNT};
    for (int i = 0; i < SAFETENSORS_TYPE_COUNT; i++)
        if (!strcmp(dtype, safetensors_type_name((SafetensorsType)i))) t->type = (SafetensorsType)i;
    if (t->type == SAFETENSORS_TYPE_COUNT)
        return error_set(e, "%s: %.*s: unknown dtype \"%.*s\"", s->name, shown, name, safetensors_shown(dtype), dtype);
    t->dims = safetensors_integers(json_object_get(entry, "shape"), SAFETENSORS_DIMS, t->shape);
    if (t->dims < 0)
        return error_set(e, "%s: %.*s: shape is not a list of at most %d sizes", s->name, shown, name,
                         SAFETENSORS_DIMS);
    uint64_t offset[2], bytes;
    if (safetensors_integers(json_object_get(entry, "data_offsets"), 2, offset) != 2)
        return error_set(e, "%s: %.*s: data_offsets is not a list of two offsets", s->name, shown, name);
    t->begin = offset[0];
    t->end = offset[1];
    if (t->begin > t->end || t->end > s->data_bytes)
        return error_set(e, "%s: %.*s: bytes %llu to %llu, the file has %llu bytes of data", s->name, shown, name,
                         (unsigned long long)t->begin, (unsigned long long)t->end, (unsigned long long)s->data_bytes);
    if (!safetensors_size(t->type, t->dims, t->shape, &t->elements, &bytes))
        return error_set(e, "%s: %.*s: its shape is not a whole number of bytes below 2^61", s->name, shown, name);
    if (bytes != t->end - t->begin)
        return error_set(e, "%s: %.*s: has %llu bytes, its shape and dtype need %llu", s->name, shown, name,
                         (unsigned long long)(t->end - t->begin), (unsigned long long)bytes);
    return true;
}

static inline int safetensors_by_offset(const void *a, const void *b) {
    const SafeTensor *x = (const SafeTensor *)a, *y = (const SafeTensor *)b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static inline int safetensors_by_name(const void *a, const void *b, void *tensors) {
    const SafeTensor *t = (const SafeTensor *)tensors;
    return strcmp(t[*(const size_t *)a].name, t[*(const size_t *)b].name);
}

/* Checks that the sorted arrays cover the data without holes and without overlap. */
static inline bool safetensors_check_cover(const Safetensors *s, Error *e) {
    uint64_t at = 0;
    for (size_t i = 0; i < s->count; i++) {
        const SafeTensor *t = &s->tensor[i];
        if (t->begin != at)
            return error_set(e, "%s: %.*s: begins at byte %llu of the data, %s ends at %llu", s->name,
                             safetensors_shown(t->name), t->name, (unsigned long long)t->begin,
                             i ? "the tensor before it" : "the header", (unsigned long long)at);
        at = t->end;
    }
    return at == s->data_bytes || error_set(e, "%s: its tensors end at byte %llu of the data, the file has %llu",
                                            s->name, (unsigned long long)at, (unsigned long long)s->data_bytes);
}

static inline bool safetensors_check_metadata(Safetensors *s, json_t *metadata, Error *e) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata)) return error_set(e, "%s: __metadata__ is not a JSON object", s->name);
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return error_set(e, "%s: __metadata__: %.*s is not a text", s->name, safetensors_shown(key), key);
    }
    s->metadata = json_incref(metadata);
    return true;
}

static inline bool safetensors_entries(Safetensors *s, json_t *header, Error *e) {
    const char *name;
    json_t *entry;
    s->tensor = (SafeTensor *)xcalloc(json_object_size(header), sizeof *s->tensor);
    json_object_foreach(header, name, entry) {
        if (!strcmp(name, "__metadata__")) {
            if (!safetensors_check_metadata(s, entry, e)) return false;
            continue;
        }
        if (!safetensors_entry(s, name, entry, &s->tensor[s->count], e)) return false;
        s->tensor[s->count++].name = xstrdup(name);
    }
    qsort(s->tensor, s->count, sizeof *s->tensor, safetensors_by_offset);
    return true;
}

/* Reads the header of s->file. */
static inline bool safetensors_start(Safetensors *s, Error *e) {
    uint64_t n;
    json_error_t bad;
    char kind[FILE_KIND_TEXT];
    if (s->file_bytes < 8)
        return error_set(e, "%s: has %zu bytes, a safetensors file has at least 8", s->name, s->file_bytes);
    memcpy(&n, s->file, 8);
    const bool brace = s->file_bytes > 8 && s->file[8] == '{';
    if (!brace && file_kind_text(s->file, s->file_bytes, kind))
        return error_set(e, "%s: is not a safetensors file, but %s", s->name, kind);
    if (n > SAFETENSORS_HEADER_MAX || n > s->file_bytes - 8)
        return error_set(e, "%s: header of %llu bytes, the file has %zu and the limit is %d: not a safetensors file",
                         s->name, (unsigned long long)n, s->file_bytes - 8, SAFETENSORS_HEADER_MAX);
    if (!n || !brace) return error_set(e, "%s: header does not begin with '{'", s->name);
    if (memchr(s->file + 8, 0, (size_t)n)) return error_set(e, "%s: header contains a NUL byte", s->name);
    s->data_bytes = s->file_bytes - 8 - n;
    json_t *header = json_loadb((const char *)s->file + 8, (size_t)n, JSON_REJECT_DUPLICATES, &bad);
    if (!header) return error_set(e, "%s: header, column %d: %s", s->name, bad.column, bad.text);
    const bool ok = safetensors_entries(s, header, e) && safetensors_check_cover(s, e);
    json_decref(header);
    if (!ok) return false;
    s->by_name = (size_t *)xcalloc(s->count, sizeof *s->by_name);
    for (size_t i = 0; i < s->count; i++) {
        s->tensor[i].data = s->file + 8 + n + s->tensor[i].begin;
        s->by_name[i] = i;
    }
    qsort_r(s->by_name, s->count, sizeof *s->by_name, safetensors_by_name, s->tensor);
    return true;
}

/* Reads a file in memory, which must outlive s. name: for messages. On failure nothing stays allocated. */
static inline bool safetensors_memory(Safetensors *s, const char *name, const void *data, size_t n, Error *e) {
    *s = (Safetensors){.name = xstrdup(name), .file = (const uint8_t *)data, .file_bytes = n};
    if (safetensors_start(s, e)) return true;
    safetensors_close(s);
    return false;
}

static inline bool safetensors_map(Safetensors *s, int fd, Error *e) {
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) return error_set(e, "%s: cannot open: %s", s->name, strerror(errno));
    if (!S_ISREG(st.st_mode)) return error_set(e, "%s: is not a regular file", s->name);
    if (st.st_size < 8)
        return error_set(e, "%s: has %lld bytes, a safetensors file has at least 8", s->name, (long long)st.st_size);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) return error_set(e, "%s: cannot map into memory: %s", s->name, strerror(errno));
    s->file = (const uint8_t *)map;
    s->file_bytes = (size_t)st.st_size;
    s->mapped = true;
    return true;
}

/* Maps the file `path` into memory and reads its header. On failure nothing stays open. O_NONBLOCK: a pipe is refused
 * without waiting for what is written to it. */
static inline bool safetensors_open(Safetensors *s, const char *path, Error *e) {
    *s = (Safetensors){.name = xstrdup(path)};
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const bool ok = safetensors_map(s, fd, e) && safetensors_start(s, e);
    if (fd >= 0) close(fd);
    if (!ok) safetensors_close(s);
    return ok;
}

/* Returns the array of that name, or NULL. */
static inline const SafeTensor *safetensors_find(const Safetensors *s, const char *name) {
    size_t low = 0, high = s->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const SafeTensor *t = &s->tensor[s->by_name[middle]];
        const int order = strcmp(name, t->name);
        if (!order) return t;
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

/* Converts elements [first, first + n) of an array of a float dtype to float32. */
static inline void safetensors_floats(const SafeTensor *t, uint64_t first, float *to, size_t n) {
    const uint8_t *from = t->data + first * (safetensors_type_bits(t->type) / 8);
    assert(safetensors_type_is_float(t->type) && first <= t->elements && n <= t->elements - first);
    if (t->type == SAFETENSORS_F32) {
        memcpy(to, from, n * sizeof *to);
        return;
    }
    if (t->type == SAFETENSORS_F64) {
        for (size_t i = 0; i < n; i++) {
            double value;
            memcpy(&value, from + 8 * i, 8);
            to[i] = (float)value;
        }
        return;
    }
    const bool brain = t->type == SAFETENSORS_BF16;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, from + 2 * i, 2);
        to[i] = brain ? half_from_bf16(half) : half_from_f16(half);
    }
}

/* Whether all values of an array of 16 or 32 bits are finite. All threads read it once. */
static inline bool safetensors_finite(const SafeTensor *t) {
    const bool wide = t->type == SAFETENSORS_F32;
    const uint16_t exponent = t->type == SAFETENSORS_F16 ? 0x7c00 : 0x7f80; /* all bits are set: infinite or NaN */
    const uint8_t *data = t->data + (wide ? 2 : 0);                         /* the upper half of a float32 */
    int infinite = 0;
    assert(wide || t->type == SAFETENSORS_F16 || t->type == SAFETENSORS_BF16);
#pragma omp parallel for simd schedule(static) reduction(| : infinite) if (parallel : t->elements > 1 << 16)
    for (uint64_t i = 0; i < t->elements; i++) {
        uint16_t half;
        memcpy(&half, data + (wide ? 4 : 2) * i, 2);
        infinite |= (half & exponent) == exponent;
    }
    return !infinite;
}

/* Converts n float32 values to a float dtype, into `to`, which need not be aligned. Returns false if a finite value
 * becomes infinite. */
static inline bool safetensors_convert(SafetensorsType type, const float *from, void *to, size_t n) {
    uint8_t *at = (uint8_t *)to;
    bool ok = true;
    assert(safetensors_type_is_float(type));
    if (type == SAFETENSORS_F32) memcpy(to, from, n * sizeof *from);
    for (size_t i = 0; type == SAFETENSORS_F64 && i < n; i++) {
        const double value = from[i];
        memcpy(at + 8 * i, &value, 8);
    }
    for (size_t i = 0; (type == SAFETENSORS_F16 || type == SAFETENSORS_BF16) && i < n; i++) {
        const uint16_t half = type == SAFETENSORS_BF16 ? half_to_bf16(from[i]) : half_to_f16(from[i]);
        const uint16_t infinite = type == SAFETENSORS_BF16 ? 0x7f80 : 0x7c00;
        if ((half & 0x7fff) == infinite && isfinite(from[i])) ok = false;
        memcpy(at + 2 * i, &half, 2);
    }
    return ok;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

typedef struct SafetensorsWriter {
    SafeTensor *tensor; /* after safetensors_begin(): in the order of the data */
    size_t count, capacity;
    Writer out;
    bool open;
    uint64_t left; /* bytes of data still to be written */
} SafetensorsWriter;

/* Announces an array. Names must differ. */
static inline void safetensors_add(SafetensorsWriter *w, const char *name, SafetensorsType type, int dims,
                                   const uint64_t *shape) {
    assert(dims <= SAFETENSORS_DIMS && !w->open);
    if (w->count == w->capacity) {
        w->capacity = 2 * w->capacity + 64;
        w->tensor = (SafeTensor *)xrealloc(w->tensor, w->capacity, sizeof *w->tensor);
    }
    SafeTensor *t = &w->tensor[w->count++];
    *t = (SafeTensor){.name = xstrdup(name), .type = type, .dims = dims};
    if (dims) memcpy(t->shape, shape, (size_t)dims * sizeof *shape);
}

/* Discards the file; an earlier file of that name stays. Harmless after safetensors_commit(). */
static inline void safetensors_abort(SafetensorsWriter *w) {
    if (w->open) writer_abort(&w->out);
    for (size_t i = 0; i < w->count; i++) free(w->tensor[i].name);
    free(w->tensor);
    *w = (SafetensorsWriter){0};
}

static inline int safetensors_written_before(const void *a, const void *b) {
    const SafeTensor *x = (const SafeTensor *)a, *y = (const SafeTensor *)b;
    if (x->type != y->type) return x->type > y->type ? -1 : 1;
    return strcmp(x->name, y->name);
}

static inline void safetensors_json_text(TextBuffer *b, const char *s) {
    json_t *value = (json_t *)checked_object(json_string_nocheck(s), "a JSON text");
    char *text = (char *)checked_object(json_dumps(value, JSON_ENCODE_ANY), "a JSON text");
    text_string(b, text);
    free(text);
    json_decref(value);
}

/* The header's text, padded to a multiple of 8. metadata: object of texts, or NULL. */
static inline bool safetensors_header(SafetensorsWriter *w, const char *path, const json_t *metadata, TextBuffer *b,
                                      Error *e) {
    uint64_t at = 0, bytes;
    text_string(b, "{");
    if (metadata) {
        char *text = (char *)checked_object(json_dumps(metadata, JSON_COMPACT), "a JSON text");
        text_format(b, "\"__metadata__\":%s", text);
        free(text);
    }
    for (size_t i = 0; i < w->count; i++) {
        SafeTensor *t = &w->tensor[i];
        if (i && !strcmp(t->name, t[-1].name)) return error_set(e, "%s: two tensors are named %s", path, t->name);
        if (!safetensors_size(t->type, t->dims, t->shape, &t->elements, &bytes) || bytes > UINT64_MAX / 4 - at)
            return error_set(e, "%s: %s: its shape is too large", path, t->name);
        t->begin = at;
        t->end = at += bytes;
        text_string(b, b->length > 1 ? "," : "");
        safetensors_json_text(b, t->name);
        text_format(b, ":{\"dtype\":\"%s\",\"shape\":[", safetensors_type_name(t->type));
        for (int k = 0; k < t->dims; k++) text_format(b, k ? ",%llu" : "%llu", (unsigned long long)t->shape[k]);
        text_format(b, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->begin, (unsigned long long)t->end);
    }
    text_string(b, "}");
    while (b->length % 8) text_string(b, " ");
    w->left = at;
    return b->length <= SAFETENSORS_HEADER_MAX ||
           error_set(e, "%s: header of %zu bytes, the limit is %d", path, b->length, SAFETENSORS_HEADER_MAX);
}

/* Sorts the announced arrays and writes the header. Afterwards the data of w->tensor[0], [1], ... must be written. On
 * failure the writer is empty again. */
static inline bool safetensors_begin(SafetensorsWriter *w, const char *path, const json_t *metadata, Error *e) {
    TextBuffer header = {0};
    qsort(w->tensor, w->count, sizeof *w->tensor, safetensors_written_before);
    bool ok = safetensors_header(w, path, metadata, &header, e);
    if (ok) ok = w->open = writer_open(&w->out, path, e);
    const uint64_t n = header.length;
    ok = ok && writer_write(&w->out, &n, 8, e) && writer_write(&w->out, header.text, header.length, e);
    text_free(&header);
    if (!ok) safetensors_abort(w);
    return ok;
}

/* Writes the next n bytes of the data. */
static inline bool safetensors_put(SafetensorsWriter *w, const void *data, size_t n, Error *e) {
    assert(w->open && n <= w->left);
    w->left -= n;
    return writer_write(&w->out, data, n, e);
}

/* Writes the next n elements, of this dtype. name: of the tensor, for messages. */
static inline bool safetensors_put_floats(SafetensorsWriter *w, const char *name, SafetensorsType type,
                                          const float *from, size_t n, Error *e) {
    uint8_t piece[8 * 2048];
    const size_t size = safetensors_type_bits(type) / 8;
    while (n) {
        const size_t some = n < sizeof piece / 8 ? n : sizeof piece / 8;
        if (!safetensors_convert(type, from, piece, some))
            return error_set(e, "%s: %s: has a value that %s cannot store, write bf16 or float32", w->out.name, name,
                             safetensors_type_name(type));
        if (!safetensors_put(w, piece, some * size, e)) return false;
        from += some;
        n -= some;
    }
    return true;
}

/* Renames the file to its path, when all its data is on the disk. The writer is closed in any case. */
static inline bool safetensors_commit(SafetensorsWriter *w, Error *e) {
    assert(w->open && !w->left);
    const bool ok = writer_commit(&w->out, e);
    w->open = false;
    safetensors_abort(w);
    return ok;
}

#endif
