/* rollouts.h - the file of a run's rollouts: prompts with their completions, token by token, as JSON lines.
 *
 *     {"record":"rollouts","run":"1f3a...","program":"train_grpo"}
 *     {"step":40,"kind":"fixed","prompt_id":17,"prompt":"...","answer":"...","samples":[
 *       {"id":"17.3","text":"...","tokens":["2"," 3"],"drawn":[2],"logp":[-0.1,-0.2],"old_logp":[...],
 *        "sampler_logp":[...],"ref_logp":[...],"entropy":[...],"advantage":0.93,"rewards":{"verify":1,"format":0.1},
 *        "reward":1.1,"gold":null,"kl":0.3,"right":true,"finished":true,"stop":"completed","turns":1}]}
 *     {"record":"clip","step":40,"unit":"token","loss":"grpo","epsilon":0.2,"epsilon_high":0.2,"edges":[...],
 *      "sizes":[...],"counts":[[...]],"zero":[...],"share":0.02,"tokens":[...]}
 *
 * A group is one line: a prompt of one step with its completions. kind: "fixed" for the prompts that are sampled at each
 * of the steps, "trained" for groups that the step was trained on. tokens, and the arrays beside it, have one entry for
 * each token of the completion; a character of several tokens is in the last of them. drawn: the lengths of runs of
 * tokens, drawn ones first, then observed ones (results of tools), and so on; the values of observed tokens are null.
 * turn_times: of several turns, when each began and ended, in seconds from the start of the completion; between the end of
 * one and the beginning of the next it waited for the answer. role, episode: what a program of --tool-cmd says that the
 * completion plays, and in which game. advantage: a number, or one for each token. kl: the sum of logp - ref_logp over the
 * drawn tokens, in nats. off_policy: true for a demonstration, which the policy did not draw, so that its sampler_logp are
 * null. What a trainer does not have is left out or null. Numbers have four significant digits.
 *
 * A file whose name ends in .zst is compressed, one frame for each line. Resuming drops the lines after the state's step
 * and a line that is cut off. The file names its run: a run is not continued in the file of another. If a line cannot be
 * written, the file ends there, and the run goes on.
 *
 *     RolloutLog log;
 *     if (!rollouts_open(&log, "rollouts.jsonl.zst", "1f3a", "train_grpo", -1, &e)) die("%s", e.text);
 *     rollouts_add(&log, json_pack("{s:i}", "step", 1));    // takes the record over
 *     if (log.failed.text[0]) warn("%s", log.failed.text);
 *     rollouts_close(&log);
 *
 *     Rollouts r = {0};                                    // reads a whole file
 *     if (!rollouts_read(&r, "rollouts.jsonl.zst", &e)) die("%s", e.text);
 *     rollouts_free(&r);
 */
#ifndef LLMC_REPORT_ROLLOUTS_H
#define LLMC_REPORT_ROLLOUTS_H

#include "../base/error.h"     /* error_set, Error, checked_object, xmalloc, ... */
#include "../base/io.h"        /* writer_write, Reader, IO_BUFFER, reader_close, ... */
#include "../base/json_text.h" /* json_utf8 */
#include "../base/text.h"      /* TextBuffer, text_append, text_free, text_clear */
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <unistd.h>
#include <zstd.h>

/* A line of the file, kept for the page. */
typedef struct RolloutLine {
    char *text;
    int64_t step;
    bool clip;  /* a record "clip" */
    bool fixed; /* a group of a prompt that is sampled at each step */
} RolloutLine;

typedef struct Rollouts {
    RolloutLine *lines;
    size_t count;
    char run[40], program[40]; /* of the first line; "" without one */
    bool cut;                  /* the file ends within a line, which is left out */
} Rollouts;

typedef struct RolloutLog {
    char *path; /* NULL: the records are only kept for the page */
    int fd;     /* -1: not open */
    bool compress;
    bool begun; /* the first line is there */
    char run[40], program[40];
    Rollouts kept;
    size_t groups;      /* written by this process */
    double bytes;       /* of JSON, of those groups */
    Error failed;       /* "" until a line cannot be written; then the file ends */
    size_t kept_tokens; /* most tokens of a completion that are kept for the page */
} RolloutLog;

/* ---- values ---- */

/* The number of bytes at the end of text[0..n) that begin a character whose rest may follow. */
static inline size_t rollout_unfinished(const char *text, size_t n) {
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        const unsigned char c = (unsigned char)text[n - back];
        if ((c & 0xC0) == 0x80) continue;
        const size_t needed = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC2 ? 2 : 1;
        return needed > back && c < 0xF5 ? back : 0;
    }
    return 0;
}

/* The texts of a completion's tokens, which concatenated are its text: a token that ends within a character is joined to
 * the next one by it. */
typedef struct RolloutTexts {
    json_t *all;
    TextBuffer rest;
} RolloutTexts;

static inline RolloutTexts rollout_texts(void) {
    return (RolloutTexts){.all = (json_t *)checked_object(json_array(), "a JSON array")};
}

/* Adds a token of n bytes; last: it is the last one of the completion. */
static inline void rollout_texts_add(RolloutTexts *t, const char *bytes, size_t n, bool last) {
    text_append(&t->rest, bytes, n);
    const size_t held = last ? 0 : rollout_unfinished(t->rest.text, t->rest.length), ready = t->rest.length - held;
    json_array_append_new(t->all, json_utf8(t->rest.text, ready));
    memmove(t->rest.text, t->rest.text + ready, held);
    t->rest.length = held;
}

/* Returns the array of the texts, which the caller owns, and frees t. */
static inline json_t *rollout_texts_end(RolloutTexts *t) {
    text_free(&t->rest);
    return t->all;
}

/* ---- reading ---- */

/* Whether 16 bytes are the beginning of a file of rollouts. */
static inline bool rollouts_begins(const char *bytes) { return !memcmp(bytes, "{\"record\":\"rollo", 16); }

static inline void rollouts_free(Rollouts *r) {
    for (size_t i = 0; i < r->count; i++) free(r->lines[i].text);
    free(r->lines);
    *r = (Rollouts){0};
}

/* Whether array is one of `length` values, each a number or null; an absent one is right, too. */
static inline bool rollout_is_numbers(const json_t *array, size_t length) {
    if (!array || json_is_null(array)) return true;
    if (!json_is_array(array) || json_array_size(array) != length) return false;
    for (size_t i = 0; i < length; i++) {
        const json_t *value = json_array_get(array, i);
        if (!json_is_number(value) && !json_is_null(value)) return false;
    }
    return true;
}

static inline bool rollout_is_strings(const json_t *array) {
    if (!json_is_array(array)) return false;
    for (size_t i = 0; i < json_array_size(array); i++)
        if (!json_is_string(json_array_get(array, i))) return false;
    return true;
}

/* The run lengths of `drawn` add up to the number of tokens. */
static inline bool rollout_is_drawn(const json_t *drawn, size_t length) {
    size_t sum = 0;
    if (!drawn) return true;
    for (size_t i = 0; i < json_array_size(drawn); i++) {
        const json_int_t n = json_integer_value(json_array_get(drawn, i));
        if (!json_is_integer(json_array_get(drawn, i)) || n < 0 || (uint64_t)n > length - sum) return false;
        sum += (size_t)n;
    }
    return json_is_array(drawn) && sum == length;
}

/* Whether a list has pairs of numbers or nulls; an absent one is right, too. */
static inline bool rollout_is_times(const json_t *times) {
    bool ok = !times || json_is_array(times);
    for (size_t i = 0; ok && i < json_array_size(times); i++)
        ok = json_is_array(json_array_get(times, i)) && rollout_is_numbers(json_array_get(times, i), 2);
    return ok;
}

/* Whether a completion has the fields that every reader needs, with the right types and lengths. */
static inline bool rollout_is_sample(const json_t *sample, Error *e) {
    static const char *const arrays[] = {"logp", "old_logp", "sampler_logp", "ref_logp", "entropy"};
    const json_t *tokens = json_object_get(sample, "tokens"), *advantage = json_object_get(sample, "advantage");
    const size_t n = json_array_size(tokens);
    if (!json_is_string(json_object_get(sample, "text"))) return error_set(e, "a completion without a \"text\"");
    if (!rollout_is_strings(tokens)) return error_set(e, "a completion without \"tokens\", expected a list of texts");
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        if (!rollout_is_numbers(json_object_get(sample, arrays[i]), n))
            return error_set(e, "\"%s\" of a completion is not a list of %zu numbers, one for each token", arrays[i],
                             n);
    if (json_is_array(advantage) ? !rollout_is_numbers(advantage, n)
                                 : advantage && !json_is_number(advantage) && !json_is_null(advantage))
        return error_set(e, "\"advantage\" of a completion is neither a number nor a list of %zu", n);
    if (!rollout_is_drawn(json_object_get(sample, "drawn"), n))
        return error_set(e, "\"drawn\" of a completion is not a list of lengths with the sum %zu", n);
    if (!rollout_is_times(json_object_get(sample, "turn_times")))
        return error_set(e, "\"turn_times\" of a completion is not a list of pairs of seconds");
    return true;
}

static inline bool rollout_is_group(const json_t *group, Error *e) {
    const json_t *samples = json_object_get(group, "samples");
    if (!json_is_integer(json_object_get(group, "prompt_id"))) return error_set(e, "a group without a \"prompt_id\"");
    if (!json_is_string(json_object_get(group, "prompt"))) return error_set(e, "a group without a \"prompt\"");
    if (!json_array_size(samples)) return error_set(e, "a group without \"samples\"");
    for (size_t i = 0; i < json_array_size(samples); i++)
        if (!rollout_is_sample(json_array_get(samples, i), e)) return false;
    return true;
}

/* Whether a record "clip" has its histogram: rows of counts, each one longer than `edges`. */
static inline bool rollout_is_clip(const json_t *clip, Error *e) {
    const json_t *counts = json_object_get(clip, "counts"), *edges = json_object_get(clip, "edges");
    const size_t bins = json_array_size(edges) + 1;
    bool ok = bins > 1 && rollout_is_numbers(edges, bins - 1) && json_array_size(counts) &&
              json_is_array(json_object_get(clip, "zero")) && rollout_is_numbers(json_object_get(clip, "zero"), bins);
    for (size_t i = 0; ok && i < json_array_size(counts); i++)
        ok = json_is_array(json_array_get(counts, i)) && rollout_is_numbers(json_array_get(counts, i), bins);
    return ok || error_set(e, "a record \"clip\" without a histogram of \"edges\", \"counts\" and \"zero\"");
}

/* Checks a line's object, NULL if it is not JSON because of `why`. */
static inline bool rollout_is_line(const json_t *object, const json_error_t *why, Error *e) {
    if (!object) return error_set(e, "not JSON: %s, expected a group of rollouts", why->text);
    const char *record = json_string_value(json_object_get(object, "record"));
    if (record && !strcmp(record, "rollouts")) return true;
    if (!json_is_integer(json_object_get(object, "step")))
        return error_set(e, "a line without an integer \"step\", expected a group of rollouts");
    if (!record) return rollout_is_group(object, e);
    return !strcmp(record, "clip") ? rollout_is_clip(object, e)
                                   : error_set(e, "a record \"%.40s\", expected \"rollouts\" or \"clip\"", record);
}

/* Keeps a line for the page; takes text over. */
static inline void rollouts_keep(Rollouts *r, char *text, const json_t *object) {
    const char *kind = json_string_value(json_object_get(object, "kind"));
    r->lines = (RolloutLine *)xrealloc(r->lines, r->count + 1, sizeof *r->lines);
    r->lines[r->count++] = (RolloutLine){.text = text,
                                         .step = json_integer_value(json_object_get(object, "step")),
                                         .clip = json_object_get(object, "record") != NULL,
                                         .fixed = kind && !strcmp(kind, "fixed")};
}

/* Takes the names of the run from the object of the first line. */
static inline void rollouts_take_head(Rollouts *r, const json_t *head) {
    const char *run = json_string_value(json_object_get(head, "run")),
               *program = json_string_value(json_object_get(head, "program"));
    snprintf(r->run, sizeof r->run, "%s", run ? run : "");
    snprintf(r->program, sizeof r->program, "%s", program ? program : "");
}

/* Adds a line of n bytes, without its end, if its step is at most `last`. */
static inline bool rollouts_take(Rollouts *r, const char *line, size_t n, int64_t last, Error *e) {
    json_error_t why;
    json_t *object = json_loadb(line, n, JSON_ALLOW_NUL, &why); /* a model may write NULs */
    const bool ok = rollout_is_line(object, &why, e);
    if (ok && json_object_get(object, "step") && json_integer_value(json_object_get(object, "step")) <= last)
        rollouts_keep(r, xstrndup(line, n), object);
    else if (ok && !json_object_get(object, "step")) rollouts_take_head(r, object);
    json_decref(object);
    return ok;
}

/* Reads the lines of an open file whose step is at most `last`. A line that the end of the file cuts off is left out,
 * and so is what follows damage in a compressed file, which a cut also leaves. */
static inline bool rollouts_parse(Rollouts *r, Reader *in, int64_t last, Error *e) {
    TextBuffer line = {0};
    Error why;
    long long number = 1;
    bool ok = true, failed = false;
    char *piece = (char *)xmalloc(IO_BUFFER);
    for (size_t n; ok && (n = reader_some(in, piece, IO_BUFFER, &failed, &why));) {
        for (size_t at = 0; ok && at < n;) {
            const char *end = (const char *)memchr(piece + at, '\n', n - at);
            const size_t length = end ? (size_t)(end - piece) - at : n - at;
            text_append(&line, piece + at, length);
            at += length + 1;
            if (!end) break;
            ok = rollouts_take(r, line.text, line.length, last, &why) ||
                 error_set(e, "%s: line %lld: %s", in->name, number, why.text);
            text_clear(&line);
            number++;
        }
    }
    if (ok && line.length && !rollouts_take(r, line.text, line.length, last, &why)) r->cut = true;
    r->cut |= failed;
    text_free(&line);
    free(piece);
    return ok;
}

/* Reads a whole file; "-" is standard input. On failure r is empty. */
static inline bool rollouts_read(Rollouts *r, const char *path, Error *e) {
    Reader in;
    *r = (Rollouts){0};
    if (!reader_open(&in, path, e)) return false;
    bool ok = rollouts_parse(r, &in, INT64_MAX, e);
    if (ok && !r->count) ok = error_set(e, "%s: the file has no rollouts%s", in.name, r->cut ? ": it is cut off" : "");
    reader_close(&in);
    if (!ok) rollouts_free(r);
    return ok;
}

/* ---- writing ---- */

/* Appends one line to the file. */
static inline bool rollouts_put(RolloutLog *l, const char *text, size_t n, Error *e) {
    const size_t room = l->compress ? ZSTD_compressBound(n + 1) : n + 1;
    char *line = (char *)xmalloc(n + 2), *packed = line;
    size_t size = n + 1;
    memcpy(line, text, n);
    line[n] = '\n';
    if (l->compress) {
        packed = (char *)xmalloc(room);
        size = ZSTD_compress(packed, room, line, n + 1, 3);
        free(line);
        if (ZSTD_isError(size)) {
            free(packed);
            return error_set(e, "%s: cannot compress: %s", l->path, ZSTD_getErrorName(size));
        }
    }
    for (size_t at = 0; at < size;) {
        const ssize_t put = write(l->fd, packed + at, size - at);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) {
            error_set(e, "%s: cannot write: %s", l->path, strerror(errno));
            free(packed);
            return false;
        }
        at += (size_t)put;
    }
    free(packed);
    return true;
}

static inline bool rollouts_is_zst(const char *path) {
    const size_t n = strlen(path);
    return n > 4 && !strcmp(path + n - 4, ".zst");
}

/* The line that begins a file; the caller frees it. */
static inline char *rollouts_head(const RolloutLog *l) {
    json_t *head = json_pack("{s:s, s:s, s:s}", "record", "rollouts", "run", l->run, "program", l->program);
    char *text = json_dumps((json_t *)checked_object(head, "a JSON object"), JSON_COMPACT);
    json_decref(head);
    return (char *)checked_object(text, "a JSON text");
}

/* Replaces the file by the lines that were read from it. */
static inline bool rollouts_rewrite(const RolloutLog *l, Error *e) {
    Writer w;
    char *head = rollouts_head(l);
    bool ok = writer_open(&w, l->path, e);
    if (ok) {
        ok = writer_write(&w, head, strlen(head), e) && writer_write(&w, "\n", 1, e);
        for (size_t i = 0; ok && i < l->kept.count; i++)
            ok = writer_write(&w, l->kept.lines[i].text, strlen(l->kept.lines[i].text), e) &&
                 writer_write(&w, "\n", 1, e);
        ok = ok && writer_commit(&w, e);
        writer_abort(&w);
    }
    free(head);
    return ok;
}

/* Keeps of the file of a resumed run the lines up to its step. */
static inline bool rollouts_resume(RolloutLog *l, int64_t step, Error *e) {
    Reader in;
    struct stat about;
    if (stat(l->path, &about)) return errno == ENOENT || error_set(e, "%s: cannot read: %s", l->path, strerror(errno));
    if (!S_ISREG(about.st_mode) || !about.st_size) return true;
    if (!reader_open(&in, l->path, e)) return false;
    bool ok = rollouts_parse(&l->kept, &in, step, e);
    reader_close(&in);
    if (ok && l->kept.run[0] && strcmp(l->kept.run, l->run))
        ok = error_set(e, "%s: it holds the rollouts of another run; give another file, or remove it", l->path);
    if (!ok) return false;
    l->begun = l->kept.run[0] != 0;
    return !l->begun || rollouts_rewrite(l, e);
}

static inline void rollouts_close(RolloutLog *l) {
    if (l->fd >= 0) close(l->fd);
    rollouts_free(&l->kept);
    free(l->path);
    *l = (RolloutLog){.fd = -1};
}

/* Opens the file of a run; path may be NULL. run: a name that no other run has. resume_step: -1 for a new run, which
 * empties the file with its first line, or the step from which the run goes on. On failure l is closed. */
static inline bool rollouts_open(RolloutLog *l, const char *path, const char *run, const char *program,
                                 int64_t resume_step, Error *e) {
    *l = (RolloutLog){.fd = -1, .path = path ? xstrdup(path) : NULL, .kept_tokens = 512};
    snprintf(l->run, sizeof l->run, "%s", run);
    snprintf(l->program, sizeof l->program, "%s", program);
    if (!path) return true;
    l->compress = rollouts_is_zst(path);
    bool ok = resume_step < 0 || rollouts_resume(l, resume_step, e);
    if (ok) {
        l->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        if (l->fd < 0) ok = error_set(e, "%s: cannot write: %s", path, strerror(errno));
    }
    if (!ok) rollouts_close(l);
    return ok;
}

/* Writes the first line, if it is not there, over the file of an earlier run. */
static inline bool rollouts_begin(RolloutLog *l, Error *e) {
    struct stat about;
    if (l->begun) return true;
    l->begun = true;
    if (!fstat(l->fd, &about) && S_ISREG(about.st_mode) && ftruncate(l->fd, 0))
        return error_set(e, "%s: cannot empty: %s", l->path, strerror(errno));
    char *head = rollouts_head(l);
    const bool ok = rollouts_put(l, head, strlen(head), e);
    free(head);
    return ok;
}

/* The first `most` bytes of a text, or fewer, so that it ends with a whole character; the caller owns it. */
static inline json_t *rollout_text(const json_t *text, size_t most) {
    const char *bytes = json_string_value(text);
    size_t n = json_string_length(text);
    if (n > most)
        for (n = most; n && ((unsigned char)bytes[n] & 0xC0) == 0x80;) n--;
    return json_stringn(bytes, n);
}

/* Shortens the arrays of a group's completions to `most` tokens, the texts accordingly, and the number of completions. */
static inline void rollout_shorten(json_t *group, size_t most_samples, size_t most_tokens) {
    json_t *samples = json_object_get(group, "samples");
    for (size_t n = json_array_size(samples); n > most_samples; n--) {
        json_array_remove(samples, n - 1);
        json_object_set_new(group, "more_samples",
                            json_integer(json_integer_value(json_object_get(group, "more_samples")) + 1));
    }
    for (size_t i = 0; i < json_array_size(samples); i++) {
        json_t *sample = json_array_get(samples, i), *value;
        const size_t all = json_array_size(json_object_get(sample, "tokens"));
        const char *key;
        if (all <= most_tokens) continue;
        json_object_foreach(sample, key, value) {
            if (!strcmp(key, "drawn") || !strcmp(key, "turn_times")) continue;
            while (json_is_array(value) && json_array_size(value) > most_tokens)
                json_array_remove(value, json_array_size(value) - 1);
        }
        json_object_set_new(sample, "text", rollout_text(json_object_get(sample, "text"), 8 * most_tokens));
        const json_int_t before = json_integer_value(json_object_get(sample, "more_tokens"));
        json_object_set_new(sample, "more_tokens", json_integer(before + (json_int_t)(all - most_tokens)));
    }
}

/* Writes a record and keeps it for the page; takes it over. After a failure, which is in l->failed, nothing more is
 * written, so that the file has no gap. */
static inline void rollouts_add(RolloutLog *l, json_t *record) {
    char *text = (char *)checked_object(json_dumps(record, JSON_COMPACT | JSON_REAL_PRECISION(4)), "a JSON text");
    if (l->fd >= 0 && !l->failed.text[0] &&
        !(rollouts_begin(l, &l->failed) && rollouts_put(l, text, strlen(text), &l->failed))) {
        close(l->fd);
        l->fd = -1;
    }
    if (!json_object_get(record, "record")) {
        l->groups++;
        l->bytes += (double)strlen(text);
        if (strlen(text) > 40 * l->kept_tokens) {
            const size_t samples = json_array_size(json_object_get(record, "samples"));
            rollout_shorten(record, 256, samples > 32 ? 32 * l->kept_tokens / samples + 1 : l->kept_tokens);
            free(text);
            text = (char *)checked_object(json_dumps(record, JSON_COMPACT | JSON_REAL_PRECISION(4)), "a JSON text");
        }
    }
    rollouts_keep(&l->kept, text, record);
    json_decref(record);
}

#endif
