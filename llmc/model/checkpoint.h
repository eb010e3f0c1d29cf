/* checkpoint.h - model files: llm.c's GPT-2 checkpoint, byte for byte, followed by a trailer that llm.c does not read.
 *
 *   header    1024 bytes, int32[256]: [0] magic 20240326   [1] version: 3 = float32, 5 = bf16   [2] context T
 *               [3] vocabulary V   [4] layers L   [5] heads H   [6] width C   [7] padded vocabulary Vp
 *             llm.c writes 0 in all following fields and does not read them. 0 means GPT-2's value:
 *               [8] 1: a trailer follows   [9] key/value heads (H)   [10] hidden width (4C)   [11] norm
 *               [12] position   [13] mlp   [14] 1: the trailer holds a value head   [15] channels of a head (C/H)
 *               [16] 1: the output matrix is a tensor of its own
 *   weights   the tensors of tensors.h's table up to headw, in that order, stacked over layers, including the padding
 *             rows of wte: Vp C + T C + L (12 C^2 + 13 C) + 2 C elements for GPT-2
 *   trailer   8 bytes "LLMCTAIL", uint32 version 1, then sections, each
 *               {4 bytes tag, uint32 0, uint64 n, n bytes}
 *             The last section is "SUM ": 8 bytes, the XXH3-64 of all bytes before these 8. The file ends there.
 *
 * Tags: "TOKN" tokenizer blob; "CHAT" chat template, text; "HEAD" value head, float32 valuew (C) then valueb (1);
 * "RNRM" kind and normalisation of a reward model, JSON (reward_model.h); "LINE" lineage, JSON. A reader skips unknown
 * tags.
 *
 * A file that ends after the weights is an llm.c file and is also read. If there is a trailer, SUM detects any flipped
 * bit that was not detected earlier. A reader reaches SUM by requesting sections until the tag is empty. Files are read
 * and written in one pass from front to back, so pipes and zstd work (io.h). Sizes are checked against the length of
 * the file, if it is known, before anything is allocated. Weights are read into memory provided by the caller.
 *
 *     CheckpointReader c;
 *     char tag[5];
 *     uint64_t bytes;
 *     if (!checkpoint_open(&c, path, e)) return false;
 *     bool ok = checkpoint_weights(&c, weights, gpt2_file_elements(&c.config), "parameters", e);
 *     while (ok) {
 *         ok = checkpoint_section(&c, tag, &bytes, e);
 *         if (!ok || !*tag) break;                           // at the end the tag is empty; the checksum was right
 *         if (!strcmp(tag, "CHAT")) {
 *             chat = checkpoint_blob(&c, 1 << 20, NULL, "chat template", e);
 *             ok = chat != NULL;
 *         }
 *     }
 *     checkpoint_close(&c);
 *
 *     CheckpointWriter w;
 *     bool ok = checkpoint_create(&w, path, &config, false, e) && checkpoint_put_weights(&w, weights, n, e) &&
 *               checkpoint_begin_section(&w, "CHAT", length, e) && checkpoint_put(&w, text, length, e) &&
 *               checkpoint_commit(&w, e);
 *     checkpoint_abort(&w);                                  // harmless after a commit
 */
#ifndef LLMC_MODEL_CHECKPOINT_H
#define LLMC_MODEL_CHECKPOINT_H

#include "../base/error.h"     /* Error, error_set */
#include "../base/file_kind.h" /* MAGIC_CHECKPOINT */
#include "../base/half.h"      /* half_from_bf16, half_to_bf16 */
#include "../base/io.h"        /* writer_write, reader_full, reader_read, reader_left, ... */
#include "backend.h"           /* NORM_LAYER, MlpKind, NormKind */
#include "config.h"            /* ModelConfig, GPT2_NORM_EPS, model_config_check, FAMILY_GPT2, ... */
#include "tensors.h"           /* gpt2_file_elements */
#include <assert.h>

enum { CHECKPOINT_HEADER = 256, CHECKPOINT_FLOAT32 = 3, CHECKPOINT_BF16 = 5, CHECKPOINT_TRAILER = 1 };
enum { CHECKPOINT_CHUNK = 8192 }; /* elements converted at a time */

/* ---- reading ------------------------------------------------------------------------------------------------- */

typedef struct CheckpointReader {
    Reader in;
    ModelConfig config; /* value_head: the file has a HEAD section; its two tensors are not among the weights */
    bool bf16;          /* weights are stored as bf16; they are returned as float32 */
    /* private */
    bool announced;        /* the header declares a trailer */
    bool started, ended;   /* the start of the trailer has been read; its last section has been read */
    bool head_seen;        /* the HEAD section has been read */
    size_t weights_left;   /* elements */
    uint64_t section_left; /* bytes of the current section */
} CheckpointReader;

static inline void checkpoint_close(CheckpointReader *c) { reader_close(&c->in); }

/* Sets an error such as "parameter data ends at byte 1048576, header (12 layers, 768 channels) needs 497904640". */
static inline bool checkpoint_short(const CheckpointReader *c, const char *what, uint64_t end, Error *e) {
    const uint64_t needed =
        CHECKPOINT_HEADER * sizeof(int32_t) + (uint64_t)gpt2_file_elements(&c->config) * (c->bf16 ? 2 : 4);
    return error_set(e, "%s: parameter data ends at byte %llu%s%s, header (%d layers, %d channels) needs %llu",
                     c->in.name, (unsigned long long)end, what ? " in " : "", what ? what : "", (int)c->config.layers,
                     (int)c->config.width, (unsigned long long)needed);
}

/* Checks that a file of this format can store the model. It has no field for the family, the epsilon of a norm or absent
 * biases. what: the file's name. */
static inline bool checkpoint_holds(const ModelConfig *c, const char *what, Error *e) {
    if (c->family == FAMILY_GPT2 && c->qkv_bias && c->attproj_bias && c->mlp_bias && c->norm == NORM_LAYER &&
        c->norm_eps == GPT2_NORM_EPS)
        return true;
    return error_set(
        e,
        "%s: the format .bin holds GPT-2 only, with layernorm, biases and an epsilon of %g; give the output "
        "a name that ends in .safetensors, .gguf or /",
        what, (double)GPT2_NORM_EPS);
}

/* The configuration of a header's fields 2 to 16; h has 17. */
static inline ModelConfig checkpoint_config(const int32_t *h) {
    const int32_t head_size = h[5] > 0 && h[6] % h[5] == 0 ? h[6] / h[5] : 0;
    const int32_t hidden = h[6] > 0 && h[6] <= INT32_MAX / 4 ? 4 * h[6] : h[6];
    return (ModelConfig){.context = h[2],
                         .vocab = h[3],
                         .layers = h[4],
                         .heads = h[5],
                         .width = h[6],
                         .padded_vocab = h[7],
                         .kv_heads = h[9] ? h[9] : h[5],
                         .hidden = h[10] ? h[10] : hidden,
                         .norm = (NormKind)h[11],
                         .norm_eps = GPT2_NORM_EPS,
                         .position = (PositionKind)h[12],
                         .mlp = (MlpKind)h[13],
                         .qkv_bias = 1,
                         .attproj_bias = 1,
                         .mlp_bias = 1,
                         .value_head = h[14],
                         .head_size = h[15] ? h[15] : head_size,
                         .tied = h[16] == 0 || h[16] == 1 ? !h[16] : h[16]};
}

/* Sets the header of a model: 17 fields. */
static inline void checkpoint_header(const ModelConfig *m, bool bf16, int32_t *h) {
    const int32_t fields[] = {MAGIC_CHECKPOINT,
                              bf16 ? CHECKPOINT_BF16 : CHECKPOINT_FLOAT32,
                              m->context,
                              m->vocab,
                              m->layers,
                              m->heads,
                              m->width,
                              m->padded_vocab,
                              CHECKPOINT_TRAILER,
                              m->kv_heads == m->heads ? 0 : m->kv_heads,
                              m->hidden == 4 * m->width ? 0 : m->hidden,
                              (int32_t)m->norm,
                              (int32_t)m->position,
                              (int32_t)m->mlp,
                              m->value_head,
                              model_q_width(m) == m->width ? 0 : m->head_size,
                              !m->tied};
    memcpy(h, fields, sizeof fields);
}

/* Reads and checks the header of a checkpoint from c->in, which is open and at its start. Does not close it. */
static inline bool checkpoint_start(CheckpointReader *c, Error *e) {
    int32_t h[CHECKPOINT_HEADER];
    const char *name = c->in.name;
    *c = (CheckpointReader){.in = c->in};
    if (!reader_header(&c->in, h, sizeof h, MAGIC_CHECKPOINT, MAGIC_CHECKPOINT, e)) return false;
    if (h[1] != CHECKPOINT_FLOAT32 && h[1] != CHECKPOINT_BF16)
        return error_set(e, "%s: checkpoint of version %d, expected 3 (float32) or 5 (bf16)", name, (int)h[1]);
    if (h[8] != 0 && h[8] != CHECKPOINT_TRAILER)
        return error_set(e, "%s: trailer of version %d, expected %d", name, (int)h[8], CHECKPOINT_TRAILER);
    c->bf16 = h[1] == CHECKPOINT_BF16;
    c->announced = h[8] != 0;
    c->config = checkpoint_config(h);
    if (!model_config_check(&c->config, name, e)) return false;
    if (c->config.norm != NORM_LAYER)
        return error_set(e, "%s: norm is %d, expected %d in this format", name, (int)c->config.norm, (int)NORM_LAYER);
    c->weights_left = gpt2_file_elements(&c->config);
    const int64_t left = reader_left(&c->in);
    if (left >= 0 && (uint64_t)left / (c->bf16 ? 2 : 4) < c->weights_left)
        return checkpoint_short(c, NULL, c->in.position + (uint64_t)left, e);
    return true;
}

/* Opens the checkpoint `path` ("-": standard input; may be zstd). On success config and bf16 are set. */
static inline bool checkpoint_open(CheckpointReader *c, const char *path, Error *e) {
    if (!reader_open(&c->in, path, e)) return false;
    if (checkpoint_start(c, e)) return true;
    checkpoint_close(c);
    return false;
}

/* Reads the next n weights, in file order, as float32. `what` names them in the message if the file ends among them. */
static inline bool checkpoint_weights(CheckpointReader *c, float *dst, size_t n, const char *what, Error *e) {
    uint16_t half[CHECKPOINT_CHUNK];
    assert(n <= c->weights_left);
    c->weights_left -= n;
    bool failed = false;
    if (!c->bf16) {
        if (reader_full(&c->in, dst, n * 4, &failed, e) == n * 4) return true;
        return failed ? false : checkpoint_short(c, what, c->in.position, e);
    }
    while (n) {
        const size_t some = n < CHECKPOINT_CHUNK ? n : CHECKPOINT_CHUNK;
        if (reader_full(&c->in, half, some * 2, &failed, e) < some * 2)
            return failed ? false : checkpoint_short(c, what, c->in.position, e);
        for (size_t i = 0; i < some; i++) dst[i] = half_from_bf16(half[i]);
        dst += some;
        n -= some;
    }
    return true;
}

/* Skips the weights that were not read, then reads the start of the trailer, if there is one. */
static inline bool checkpoint_trailer(CheckpointReader *c, Error *e) {
    char magic[8];
    uint32_t version;
    bool failed = false;
    const char *name = c->in.name;
    float waste[CHECKPOINT_CHUNK];
    while (c->weights_left) {
        const size_t n = c->weights_left < CHECKPOINT_CHUNK ? c->weights_left : CHECKPOINT_CHUNK;
        if (!checkpoint_weights(c, waste, n, "parameters", e)) return false;
    }
    c->started = true;
    const uint64_t start = c->in.position;
    const size_t got = reader_full(&c->in, magic, sizeof magic, &failed, e);
    if (failed) return false;
    if (!got && !c->announced) return c->ended = true; /* an llm.c file */
    if (!got)
        return error_set(e, "%s: file ends at byte %llu after the parameters, but its header declares a trailer", name,
                         (unsigned long long)start);
    if (got < sizeof magic || memcmp(magic, "LLMCTAIL", sizeof magic))
        return error_set(e, "%s: unknown data after the parameters at byte %llu, expected a trailer or the end", name,
                         (unsigned long long)start);
    if (!reader_read(&c->in, &version, sizeof version, "trailer", e)) return false;
    if (version != CHECKPOINT_TRAILER)
        return error_set(e, "%s: trailer of version %u, expected %d", name, (unsigned)version, CHECKPOINT_TRAILER);
    return true;
}

/* Reads the section SUM, checks the checksum and expects the end of the file. */
static inline bool checkpoint_sum(CheckpointReader *c, Error *e) {
    if (!reader_checksum(&c->in, e)) return false;
    if (c->config.value_head && !c->head_seen)
        return error_set(e, "%s: header declares a value head, but the trailer has none", c->in.name);
    return c->ended = true;
}

/* Advances to the next section and returns its tag, or "" at the end, and its size. Skips the rest of the weights or of
 * the current section. The end of a file with a trailer is reached only if its checksum is correct. */
static inline bool checkpoint_section(CheckpointReader *c, char tag[5], uint64_t *bytes, Error *e) {
    struct {
        char tag[4];
        uint32_t zero;
        uint64_t bytes;
    } head;
    memset(tag, 0, 5);
    *bytes = 0;
    if (!c->started && !checkpoint_trailer(c, e)) return false;
    if (c->ended) return true;
    if (!reader_skip(&c->in, c->section_left, "section", e)) return false;
    c->section_left = 0;
    if (!reader_read(&c->in, &head, sizeof head, "section", e)) return false;
    const char *name = c->in.name;
    for (int i = 0; i < 4; i++)
        if (head.tag[i] < ' ' || head.tag[i] > '~' || head.zero)
            return error_set(e, "%s: no section begins at byte %llu, expected one", name,
                             (unsigned long long)(c->in.position - sizeof head));
    const int64_t left = reader_left(&c->in);
    if (left >= 0 && head.bytes > (uint64_t)left)
        return error_set(e, "%s: section %.4s needs %llu bytes at byte %llu, the file ends at %llu", name, head.tag,
                         (unsigned long long)head.bytes, (unsigned long long)c->in.position,
                         (unsigned long long)(c->in.position + (uint64_t)left));
    const bool sum = !memcmp(head.tag, "SUM ", 4), value = !memcmp(head.tag, "HEAD", 4);
    const uint64_t expected = sum ? 8 : 4 * ((uint64_t)c->config.width + 1);
    if ((sum || value) && head.bytes != expected)
        return error_set(e, "%s: section %.4s has %llu bytes, expected %llu", name, head.tag,
                         (unsigned long long)head.bytes, (unsigned long long)expected);
    if (sum) return checkpoint_sum(c, e);
    if (value) c->config.value_head = c->head_seen = true;
    memcpy(tag, head.tag, 4);
    *bytes = c->section_left = head.bytes;
    return true;
}

/* Reads the next n bytes of the current section. */
static inline bool checkpoint_payload(CheckpointReader *c, void *dst, size_t n, const char *what, Error *e) {
    if (n > c->section_left)
        return error_set(e, "%s: %s: needs %zu bytes at byte %llu, its section ends after %llu", c->in.name, what, n,
                         (unsigned long long)c->in.position, (unsigned long long)c->section_left);
    c->section_left -= n;
    return reader_read(&c->in, dst, n, what, e);
}

/* Returns the rest of the current section in new memory with a closing NUL. *n is set to its length unless n is NULL.
 * Fails if it is longer than `limit` bytes. */
static inline void *checkpoint_blob(CheckpointReader *c, size_t limit, size_t *n, const char *what, Error *e) {
    if (c->section_left > limit) {
        error_set(e, "%s: %s: has %llu bytes, the maximum is %zu", c->in.name, what,
                  (unsigned long long)c->section_left, limit);
        return NULL;
    }
    if (n) *n = (size_t)c->section_left;
    void *blob = reader_blob(&c->in, c->section_left, what, e);
    c->section_left = 0;
    return blob;
}

/* Skips the rest of the file and verifies the checksum. */
static inline bool checkpoint_finish(CheckpointReader *c, Error *e) {
    char tag[5];
    uint64_t bytes;
    do
        if (!checkpoint_section(c, tag, &bytes, e)) return false;
    while (*tag);
    return true;
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

typedef struct CheckpointWriter {
    Writer out;
    ModelConfig config;
    bool bf16;
    bool trailer, head_written;
    size_t weights_left;   /* elements */
    uint64_t section_left; /* bytes of the current section */
} CheckpointWriter;

/* Discards the file; an earlier file of that name stays. Harmless after checkpoint_commit(). */
static inline void checkpoint_abort(CheckpointWriter *c) { writer_abort(&c->out); }

/* Begins a checkpoint of a model of this configuration, with weights stored as bf16 or float32. */
static inline bool checkpoint_create(CheckpointWriter *c, const char *path, const ModelConfig *config, bool bf16,
                                     Error *e) {
    int32_t h[CHECKPOINT_HEADER] = {0};
    *c = (CheckpointWriter){.out.fd = -1, .config = *config, .bf16 = bf16};
    if (!model_config_check(config, path, e) || !checkpoint_holds(config, path, e)) return false;
    c->weights_left = gpt2_file_elements(config);
    checkpoint_header(config, bf16, h);
    if (!writer_open(&c->out, path, e)) return false;
    if (writer_write(&c->out, h, sizeof h, e)) return true;
    checkpoint_abort(c);
    return false;
}

/* Writes the next n weights in file order: the tensors of tensors.h's table up to headw. */
static inline bool checkpoint_put_weights(CheckpointWriter *c, const float *src, size_t n, Error *e) {
    uint16_t half[CHECKPOINT_CHUNK];
    assert(n <= c->weights_left);
    c->weights_left -= n;
    if (!c->bf16) return writer_write(&c->out, src, n * 4, e);
    while (n) {
        const size_t some = n < CHECKPOINT_CHUNK ? n : CHECKPOINT_CHUNK;
        for (size_t i = 0; i < some; i++) half[i] = half_to_bf16(src[i]);
        if (!writer_write(&c->out, half, some * 2, e)) return false;
        src += some;
        n -= some;
    }
    return true;
}

/* Begins a section of exactly `bytes` bytes. The weights and the previous section must be complete. */
static inline bool checkpoint_begin_section(CheckpointWriter *c, const char *tag, uint64_t bytes, Error *e) {
    const uint32_t version = CHECKPOINT_TRAILER, zero = 0;
    assert(strlen(tag) == 4 && !c->weights_left && !c->section_left);
    if (!c->trailer && !(writer_write(&c->out, "LLMCTAIL", 8, e) && writer_write(&c->out, &version, 4, e)))
        return false;
    c->trailer = true;
    if (!strcmp(tag, "HEAD")) {
        assert(c->config.value_head && bytes == 4 * ((uint64_t)c->config.width + 1));
        c->head_written = true;
    }
    c->section_left = bytes;
    return writer_write(&c->out, tag, 4, e) && writer_write(&c->out, &zero, 4, e) &&
           writer_write(&c->out, &bytes, 8, e);
}

/* Writes the next n bytes of the current section. */
static inline bool checkpoint_put(CheckpointWriter *c, const void *src, size_t n, Error *e) {
    assert(n <= c->section_left);
    c->section_left -= n;
    return writer_write(&c->out, src, n, e);
}

/* Writes a whole section. */
static inline bool checkpoint_put_section(CheckpointWriter *c, const char *tag, const void *src, size_t n, Error *e) {
    return checkpoint_begin_section(c, tag, n, e) && checkpoint_put(c, src, n, e);
}

/* Writes the checksum and renames the file to its path. The writer is closed in any case. */
static inline bool checkpoint_commit(CheckpointWriter *c, Error *e) {
    assert(c->head_written == (c->config.value_head != 0));
    bool ok = checkpoint_begin_section(c, "SUM ", 8, e);
    if (ok) {
        const uint64_t hash = writer_hash(&c->out);
        ok = checkpoint_put(c, &hash, sizeof hash, e) && writer_commit(&c->out, e);
    }
    checkpoint_abort(c);
    return ok;
}

#endif
