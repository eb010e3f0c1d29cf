/* tensorboard.h - TensorBoard event files of scalars, histograms, texts and hyperparameters.
 *
 * An event file is a sequence of TFRecords, each
 *
 *     u64 length, u32 mask(crc32c(length)), bytes[length], u32 mask(crc32c(bytes))         little-endian
 *     mask(c) = rotate_right(c, 15) + 0xa282ead8
 *
 * and each record an Event in the protocol buffers' wire format (tensorflow/core/util/event.proto, summary.proto):
 *
 *     Event   1: double wall_time   2: int64 step   3: string file_version ("brain.Event:2", in the first record)
 *             5: Summary            7: SessionLog {1: status, START = 1}
 *     Summary 1: repeated Value {1: string tag, 2: float simple_value, 5: HistogramProto, 8: TensorProto,
 *             9: SummaryMetadata}
 *     HistogramProto   double 1: min, 2: max, 3: num, 4: sum, 5: sum_squares, 6: bucket_limit, 7: bucket (both packed)
 *     SummaryMetadata  1: {1: string plugin_name, 2: bytes content}   4: data class, TENSOR = 2
 *     TensorProto      1: dtype, FLOAT = 1, STRING = 7   2: shape {2: dim {1: int64 size}}   5: float   8: string
 *
 * A text is a string tensor of the plugin "text". The hyperparameters are the content of the plugin "hparams", 3: a
 * SessionStartInfo (plugins/hparams/plugin_data.proto) {1: map from names to google.protobuf.Value, 5: double start}.
 *
 * Tags are named as in Hugging Face's trainers: "train/" before a metric's name, and eval_loss becomes "eval/loss". A
 * resumed run begins a new file in the same folder; its SessionLog record makes TensorBoard discard the values of
 * earlier files from that step on. Non-finite values are omitted.
 *
 *     TensorBoard t;
 *     if (!tensorboard_open(&t, "runs/a", now, -1, &e)) die("%s", e.text);
 *     tensorboard_step(&t, now, 12, keys, values, 2, &e);
 *     tensorboard_close(&t, &e);
 */
#ifndef LLMC_REPORT_TENSORBOARD_H
#define LLMC_REPORT_TENSORBOARD_H

#include "../base/error.h" /* Error, error_set, checked_object, xmalloc */
#include "../base/io.h"    /* io_make_folder */
#include <jansson.h>
#include <math.h>
#include <unistd.h>

typedef struct TensorBoard {
    FILE *file; /* NULL when closed */
    char *path;
} TensorBoard;

/* ---- records ---- */

/* CRC-32C (Castagnoli, reflected polynomial 0x82f63b78) of n bytes; bit by bit, as records are short. */
static inline uint32_t tensorboard_crc32c(const void *data, size_t n) {
    const unsigned char *p = (const unsigned char *)data;
    uint32_t crc = ~0u;
    while (n--) {
        crc ^= *p++;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0x82f63b78u & -(crc & 1));
    }
    return ~crc;
}

static inline uint32_t tensorboard_masked(const void *data, size_t n) {
    const uint32_t crc = tensorboard_crc32c(data, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static inline void tensorboard_varint(FILE *f, uint64_t value) {
    for (; value >= 0x80; value >>= 7) fputc((int)(value & 0x7f) | 0x80, f);
    fputc((int)value, f);
}

/* A field's key: wire type 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes. */
static inline void tensorboard_field(FILE *f, int field, int wire) { fputc(field << 3 | wire, f); }

static inline void tensorboard_bytes(FILE *f, int field, const void *data, size_t n) {
    tensorboard_field(f, field, 2);
    tensorboard_varint(f, n);
    fwrite(data, 1, n, f);
}

/* Writes the fields that begin every event. wall: its time in seconds since 1970. */
static inline void tensorboard_event_head(FILE *f, double wall, int64_t step) {
    tensorboard_field(f, 1, 1);
    fwrite(&wall, sizeof wall, 1, f);
    if (!step) return; /* the default is not written */
    tensorboard_field(f, 2, 0);
    tensorboard_varint(f, (uint64_t)step);
}

static inline FILE *tensorboard_memory(char **data, size_t *n) {
    return (FILE *)checked_object(open_memstream(data, n), "a stream in memory");
}

/* Writes the n bytes as one record and frees them. */
static inline bool tensorboard_record(TensorBoard *t, char *data, size_t n, Error *e) {
    const uint64_t length = n;
    const uint32_t head = tensorboard_masked(&length, sizeof length), tail = tensorboard_masked(data, n);
    fwrite(&length, sizeof length, 1, t->file);
    fwrite(&head, sizeof head, 1, t->file);
    fwrite(data, 1, n, t->file);
    fwrite(&tail, sizeof tail, 1, t->file);
    free(data);
    if (fflush(t->file) || ferror(t->file)) return error_set(e, "%s: cannot write: %s", t->path, strerror(errno));
    return true;
}

/* ---- files ---- */

/* Closes the file; false if the last bytes could not be written. */
static inline bool tensorboard_close(TensorBoard *t, Error *e) {
    const bool ok = !t->file || !fclose(t->file) || error_set(e, "%s: cannot write: %s", t->path, strerror(errno));
    free(t->path);
    *t = (TensorBoard){0};
    return ok;
}

/* Creates a new event file in dir, which is created if it is missing. wall: the current time in seconds since 1970.
 * resume_step: -1, or the last step to keep of the existing files. On failure t is left closed. */
static inline bool tensorboard_open(TensorBoard *t, const char *dir, double wall, int64_t resume_step, Error *e) {
    *t = (TensorBoard){0};
    if (!io_make_folder(dir, e)) return false;
    char host[65] = "host";
    gethostname(host, sizeof host - 1);
    const size_t size = strlen(dir) + strlen(host) + 100;
    t->path = (char *)xmalloc(size);
    for (int n = 0; !t->file; n++) { /* two files opened by one process in the same second need different names */
        snprintf(t->path, size, "%s/events.out.tfevents.%lld.%s.%d.%d", dir, (long long)wall, host, getpid(), n);
        t->file = fopen(t->path, "wxe");
        if (!t->file && (errno != EEXIST || n == 1000)) {
            error_set(e, "%s: cannot write: %s", t->path, strerror(errno));
            tensorboard_close(t, NULL);
            return false;
        }
    }
    char *data;
    size_t n;
    FILE *f = tensorboard_memory(&data, &n);
    tensorboard_event_head(f, wall, resume_step + 1);
    tensorboard_bytes(f, 3, "brain.Event:2", 13);
    fclose(f);
    bool ok = tensorboard_record(t, data, n, e);
    if (ok && resume_step >= 0) {
        f = tensorboard_memory(&data, &n);
        tensorboard_event_head(f, wall, resume_step + 1);
        tensorboard_bytes(f, 7, "\x08\x01", 2); /* SessionLog.status = START */
        fclose(f);
        ok = tensorboard_record(t, data, n, e);
    }
    if (!ok) tensorboard_close(t, NULL);
    return ok;
}

/* Ends a stream in memory that was filled with a message, and writes the message as a field of f. */
static inline void tensorboard_message(FILE *f, int field, FILE *message, char **data, const size_t *n) {
    fclose(message);
    tensorboard_bytes(f, field, *data, *n);
    free(*data);
}

static inline void tensorboard_string(FILE *f, int field, const char *text) {
    tensorboard_bytes(f, field, text, strlen(text));
}

/* Writes an event with one value: a tag, a tensor's bytes and the content of a plugin (n bytes). Without content, the
 * value is the tensor, and the metadata give TENSOR as the class of the data. */
static inline bool tensorboard_plugin(TensorBoard *t, double wall, int64_t step, const char *tag, const char *plugin,
                                      const void *content, size_t n, const char *tensor, size_t tensor_n, Error *e) {
    char *bytes[5];
    size_t length[5];
    FILE *event = tensorboard_memory(&bytes[0], &length[0]), *summary = tensorboard_memory(&bytes[1], &length[1]),
         *value = tensorboard_memory(&bytes[2], &length[2]), *metadata = tensorboard_memory(&bytes[3], &length[3]),
         *data = tensorboard_memory(&bytes[4], &length[4]);
    tensorboard_string(data, 1, plugin);
    if (n) tensorboard_bytes(data, 2, content, n);
    tensorboard_message(metadata, 1, data, &bytes[4], &length[4]);
    if (!n) {
        tensorboard_field(metadata, 4, 0);
        tensorboard_varint(metadata, 2);
    }
    tensorboard_string(value, 1, tag);
    tensorboard_bytes(value, 8, tensor, tensor_n);
    tensorboard_message(value, 9, metadata, &bytes[3], &length[3]);
    tensorboard_message(summary, 1, value, &bytes[2], &length[2]);
    tensorboard_event_head(event, wall, step);
    tensorboard_message(event, 5, summary, &bytes[1], &length[1]);
    fclose(event);
    return tensorboard_record(t, bytes[0], length[0], e);
}

/* Writes a text, which TensorBoard shows as Markdown, and flushes it. */
static inline bool tensorboard_text(TensorBoard *t, double wall, int64_t step, const char *tag, const char *text,
                                    Error *e) {
    char *tensor;
    size_t n;
    FILE *f = tensorboard_memory(&tensor, &n);
    fwrite("\x08\x07\x12\x04\x12\x02\x08\x01", 1, 8, f); /* dtype STRING, shape [1] */
    tensorboard_string(f, 8, text);
    fclose(f);
    const bool ok = tensorboard_plugin(t, wall, step, tag, "text", NULL, 0, tensor, n, e);
    free(tensor);
    return ok;
}

/* Writes a run's options {"NAME": "VALUE"} as its hyperparameters; a value that is a number becomes one. */
static inline bool tensorboard_hparams(TensorBoard *t, double wall, const json_t *options, Error *e) {
    static const char empty[] = "\x08\x01\x12\x02\x12\0"; /* a tensor of no floats, as TensorBoard's own */
    char *bytes[4];
    size_t length[4];
    const char *name;
    json_t *option;
    FILE *content = tensorboard_memory(&bytes[0], &length[0]), *info = tensorboard_memory(&bytes[1], &length[1]);
    json_object_foreach((json_t *)options, name, option) {
        const char *text = json_string_value(option);
        if (!text || !*text) continue;
        char *end;
        const double number = strtod(text, &end);
        FILE *entry = tensorboard_memory(&bytes[2], &length[2]), *value = tensorboard_memory(&bytes[3], &length[3]);
        if (!*end && isfinite(number)) {
            tensorboard_field(value, 2, 1);
            fwrite(&number, sizeof number, 1, value);
        } else tensorboard_string(value, 3, text);
        tensorboard_string(entry, 1, name);
        tensorboard_message(entry, 2, value, &bytes[3], &length[3]);
        tensorboard_message(info, 1, entry, &bytes[2], &length[2]);
    }
    tensorboard_field(info, 5, 1);
    fwrite(&wall, sizeof wall, 1, info);
    tensorboard_message(content, 3, info, &bytes[1], &length[1]);
    fclose(content);
    const bool ok = tensorboard_plugin(t, wall, 0, "_hparams_/session_start_info", "hparams", bytes[0], length[0],
                                       empty, sizeof empty - 1, e);
    free(bytes[0]);
    return ok;
}

/* Writes a field of n doubles: packed if n >= 0, else a single one. */
static inline void tensorboard_doubles(FILE *f, int field, const double *values, int n) {
    if (n < 0) {
        if (*values == 0) return; /* the default is not written */
        tensorboard_field(f, field, 1);
        fwrite(values, sizeof *values, 1, f);
    } else tensorboard_bytes(f, field, values, (size_t)n * sizeof *values);
}

enum { TENSORBOARD_BUCKETS = 30 };

/* Writes the distribution of the finite ones of n values, as a histogram of buckets of equal width, and flushes it. Writes
 * nothing if there is none. */
static inline bool tensorboard_histogram(TensorBoard *t, double wall, int64_t step, const char *key,
                                         const double *values, size_t n, Error *e) {
    double low = INFINITY, high = -INFINITY, count = 0, sum = 0, squares = 0;
    double limit[TENSORBOARD_BUCKETS], bucket[TENSORBOARD_BUCKETS] = {0};
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(values[i])) continue;
        low = fmin(low, values[i]);
        high = fmax(high, values[i]);
        count++;
        sum += values[i];
        squares += values[i] * values[i];
    }
    if (!count) return true;
    const int buckets = high > low ? TENSORBOARD_BUCKETS : 1;
    for (int i = 0; i < buckets; i++) limit[i] = i + 1 < buckets ? low + (high - low) * (i + 1) / buckets : high;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(values[i])) continue;
        const int k = high > low ? (int)((values[i] - low) / (high - low) * buckets) : 0;
        bucket[k < buckets ? k : buckets - 1]++;
    }
    char *bytes[4], tag[300];
    size_t length[4];
    FILE *event = tensorboard_memory(&bytes[0], &length[0]), *summary = tensorboard_memory(&bytes[1], &length[1]),
         *value = tensorboard_memory(&bytes[2], &length[2]), *histogram = tensorboard_memory(&bytes[3], &length[3]);
    const double head[] = {low, high, count, sum, squares};
    for (int i = 0; i < 5; i++) tensorboard_doubles(histogram, i + 1, &head[i], -1);
    tensorboard_doubles(histogram, 6, limit, buckets);
    tensorboard_doubles(histogram, 7, bucket, buckets);
    snprintf(tag, sizeof tag, "train/%s", key);
    tensorboard_string(value, 1, tag);
    tensorboard_message(value, 5, histogram, &bytes[3], &length[3]);
    tensorboard_message(summary, 1, value, &bytes[2], &length[2]);
    tensorboard_event_head(event, wall, step);
    tensorboard_message(event, 5, summary, &bytes[1], &length[1]);
    fclose(event);
    return tensorboard_record(t, bytes[0], length[0], e);
}

/* Writes the finite ones of `count` scalars as one event and flushes it, so that a viewer shows them at once. */
static inline bool tensorboard_step(TensorBoard *t, double wall, int64_t step, const char *const *keys,
                                    const double *values, size_t count, Error *e) {
    char *summary, *data;
    size_t summary_bytes, n;
    FILE *s = tensorboard_memory(&summary, &summary_bytes);
    for (size_t i = 0; i < count; i++) {
        const float value = (float)values[i];
        if (!isfinite(value)) continue;
        const bool eval = !strncmp(keys[i], "eval_", 5);
        const char *prefix = eval ? "eval/" : "train/", *key = keys[i] + (eval ? 5 : 0);
        char *one;
        size_t one_bytes;
        FILE *v = tensorboard_memory(&one, &one_bytes);
        tensorboard_field(v, 1, 2);
        tensorboard_varint(v, strlen(prefix) + strlen(key));
        fprintf(v, "%s%s", prefix, key);
        tensorboard_field(v, 2, 5);
        fwrite(&value, sizeof value, 1, v);
        fclose(v);
        tensorboard_bytes(s, 1, one, one_bytes);
        free(one);
    }
    fclose(s);
    FILE *f = tensorboard_memory(&data, &n);
    tensorboard_event_head(f, wall, step);
    tensorboard_bytes(f, 5, summary, summary_bytes);
    fclose(f);
    free(summary);
    return tensorboard_record(t, data, n, e);
}

#endif
