/* shard.h - record shards: training data files, each with records of one kind.
 *
 *   header     1024 bytes, int32[256], little-endian:
 *                [0] magic 20261124   [1] version 3   [2] kind   [3] vocabulary V   [4] bytes per token id, 2 or 4
 *                [5] tokens of the longest record     [6..7] 0
 *                as uint64, at int      [8] records   [10] tokens of all records   [12] bytes of the payload
 *                [14] bytes of the tokenizer   [16] bytes of the chat template, including its NUL
 *                [18] bytes of the clusters, including their NUL, or 0;   [20..255] 0
 *   index      records x {uint64 offset into the payload, uint32 bytes, uint32 tokens}, without gaps
 *   payload    the records, one after another
 *   tokenizer  the blob of tokenizer_store(), or empty
 *   template   the chat template's text and a NUL
 *   clusters   which clusters of tasks the records are of (clusters.h), and a NUL; or nothing
 *   checksum   XXH3-64 of everything before it; the file ends here
 *
 * A record of T tokens, by kind (ids have 2 bytes if V <= 65536, else 4):
 *
 *   chat        T ids, then ceil(T / 8) bytes of mask: bit i % 8 of byte i / 8 is 1 if token i is trained on
 *   prompt      uint32[4] lengths of text, task, answer and fields; T ids; the four texts, each with a NUL
 *   preference  int32[3] tokens of the prompt, number K >= 2 of completions, tokens of the gold answer (0: there is none);
 *               float32 margin; int32[K] tokens of each completion, from the best to the worst (a pair: chosen, rejected);
 *               T ids
 *   step        int32 tokens of the prompt; T ids; T bytes: at the last token of a step its label + 1, else 0; label 0: bad,
 *               1: good, 2 + 240 p: good with probability p
 *   unpaired    int32 tokens of the prompt, int32 label: 1 good, 0 bad; T ids
 *
 * A shard is checked before any record is returned: magic number, version, all sizes against the file's length before
 * memory is allocated, the index, every length, NUL and token id, and the checksum. A shard that has been opened is
 * safe to decode. Other versions, trailing bytes and unused bits that are set are rejected. An empty shard can be
 * opened; rejecting it is up to the program. zstd and "-" are supported as in io.h.
 *
 * An uncompressed file is mapped (map.h): opening it reads it and gives its pages back, and later only the records
 * that are decoded take memory. A compressed shard or a pipe is read into memory as a whole. Index and ids are checked
 * again when a record is decoded, because a mapped file could be changed meanwhile.
 *
 * Several files of one kind, tokenizer and template can be opened as one shard, which has the records of the first
 * file, then those of the second, ...: shard_open_all().
 *
 * A token shard (tokens.h) can be opened in the same way, as chat records of plain text: shard_open_all() with `text`,
 * then shard_split(). A record is a document with the token that begins the next one, which is its end; a document that
 * is longer than the limit continues in the next record, which begins with the last token of the one before. So every
 * token of the file but the first is a target once, and is predicted from its own document only.
 *
 *     Shard s;
 *     Record r = {0};
 *     if (!shard_open(&s, "chat.shard", e)) return false;
 *     for (int64_t i = 0; i < s.count; i++)
 *         if (shard_record(&s, i, &r, e)) use(r.tokens, r.mask, r.count);
 *     record_free(&r);
 *     shard_close(&s);
 */
#ifndef LLMC_RECORDS_SHARD_H
#define LLMC_RECORDS_SHARD_H

#include "../base/error.h"     /* error_set, Error, xmalloc, xrealloc, ... */
#include "../base/file_kind.h" /* MAGIC_RECORDS */
#include "../base/io.h"        /* Reader, writer_write, reader_blob, Writer, ... */
#include "../base/map.h"       /* mapping_forget, mapping_touch, Mapping, mapping_free */
#include "clusters.h"          /* CLUSTERS_TEXT_MAX, clusters_join, clusters_new, clusters_parse, ... */
#include "tokens.h"            /* TokenShard, token_at, tokens_close, tokens_magic, ... */
#include <assert.h>
#include <math.h>

enum { SHARD_VERSION = 3, SHARD_HEADER = 256, SHARD_VOCAB_MAX = 1 << 22 };

typedef enum { RECORD_CHAT = 1, RECORD_PROMPT, RECORD_PREFERENCE, RECORD_STEP, RECORD_UNPAIRED } RecordKind;

typedef struct Record {
    /* CHAT: the conversation; PROMPT: the prompt; PREFERENCE: prompt ++ completions ++ gold answer; STEP: prompt ++ solution;
     * UNPAIRED: prompt ++ completion */
    int32_t *tokens, count;
    /* (count) CHAT: 1 = the token is trained on; STEP: at the last token of a step its label + 1, else 0; other kinds: NULL */
    uint8_t *mask;
    int32_t prompt;      /* tokens of the prompt (PROMPT: prompt == count; CHAT: 0) */
    int32_t completions; /* PREFERENCE: number of completions, at least 2; other kinds: 0 */
    int32_t *length;     /* (completions) tokens of each, from the best to the worst; other kinds: NULL */
    int32_t gold;        /* PREFERENCE: tokens of the gold answer, for TPO; 0: there is none */
    int32_t label;       /* UNPAIRED: 1 if the completion is good, else 0 */
    float margin;        /* PREFERENCE, a pair: how much better the first completion is; 0: unknown */
    /* PROMPT: prompt as text, verifier's name, answer, other fields as a JSON object; "" if absent. They point into the
     * shard */
    const char *text, *task, *answer, *fields;
    int32_t capacity; /* capacity of the buffers that shard_record() fills */
} Record;

/* The label of a step that is good with probability p; p is rounded to a multiple of 1/240. */
enum { STEP_SHARES = 240 };
static inline uint8_t step_label(double p) {
    return (uint8_t)(p <= 0 ? 0 : p >= 1 ? 1 : 2 + (int)(STEP_SHARES * p + 0.5));
}

/* The probability that a label stands for. */
static inline double step_share(uint8_t label) { return label < 2 ? label : (label - 2.0) / STEP_SHARES; }

typedef struct ShardIndex {
    uint64_t offset; /* in the payload */
    uint32_t bytes, tokens;
} ShardIndex;

_Static_assert(sizeof(ShardIndex) == 16, "the index has the same layout in memory and in the file");

typedef struct Shard {
    char *name; /* for messages */
    RecordKind kind;
    int32_t vocab, token_bytes, longest; /* longest: tokens of the longest record */
    int64_t count, total_tokens;
    void *tokenizer; /* (tokenizer_bytes), for tokenizer_load() */
    size_t tokenizer_bytes;
    uint64_t tokenizer_hash; /* XXH3-64 of the tokenizer; 0: the file does not say which */
    char *chat_template;     /* "" if there is none */
    json_t *clusters;        /* of its records (clusters.h), or NULL if the file does not say */
    const ShardIndex *index; /* (count) */
    const uint8_t *payload;
    size_t payload_bytes;
    uint64_t payload_hash; /* XXH3-64 of the payload */
    Mapping *map;          /* the file that index and payload are in, or NULL */
    TokenShard text;       /* a token shard, which has neither; .name is NULL if it is none */
    int64_t *start;        /* (count) of a token shard: the first token of each record */
    /* A shard of several files has no index and no payload. */
    struct Shard *part; /* (parts) */
    int parts;
    int64_t *first; /* (parts + 1) part k has the records first[k] ... first[k+1]-1 */
} Shard;

static inline const char *record_kind_name(RecordKind kind) {
    switch (kind) {
    case RECORD_CHAT: return "chat";
    case RECORD_PROMPT: return "prompt";
    case RECORD_PREFERENCE: return "preference";
    case RECORD_STEP: return "step";
    case RECORD_UNPAIRED: return "unpaired";
    }
    return "unknown";
}

/* Frees the buffers that shard_record() allocated in r. */
static inline void record_free(Record *r) {
    free(r->tokens);
    free(r->mask);
    free(r->length);
    *r = (Record){0};
}

/* ---- one record ---------------------------------------------------------------------------------------------- */

/* The parts of an encoded record. */
typedef struct RecordParts {
    const uint8_t *ids, *mask, *lengths; /* lengths: int32[completions], not aligned */
    int32_t prompt, completions, gold, label;
    float margin;
    const char *text[4];
} RecordParts;

static inline int32_t record_id(const uint8_t *ids, int32_t token_bytes, size_t i) {
    uint16_t narrow;
    int32_t wide;
    if (token_bytes == 4) {
        memcpy(&wide, ids + 4 * i, 4);
        return wide;
    }
    memcpy(&narrow, ids + 2 * i, 2);
    return narrow;
}

/* Removes `size` bytes from the front of the rest of a record; NULL if fewer are left. */
static inline const uint8_t *record_take(const uint8_t **p, size_t *left, size_t size) {
    const uint8_t *part = *p;
    if (size > *left) return NULL;
    *p += size;
    *left -= size;
    return part;
}

/* The number of tokens of completion k of a preference record. */
static inline int32_t record_completion_tokens(const RecordParts *parts, int32_t k) {
    int32_t length;
    memcpy(&length, parts->lengths + 4 * (size_t)k, 4);
    return length;
}

/* Whether `completions` lengths, each at least 1, add up with those of prompt and gold answer to `tokens`. The parts are
 * not trusted. */
static inline bool record_adds_up(const RecordParts *parts, uint32_t tokens) {
    int64_t sum = (int64_t)parts->prompt + parts->gold;
    for (int32_t k = 0; k < parts->completions; k++) {
        const int32_t length = record_completion_tokens(parts, k);
        if (length < 1) return false;
        sum += length;
    }
    return parts->prompt >= 0 && parts->gold >= 0 && sum == tokens;
}

/* Finds the parts of a record of `bytes` bytes and `tokens` tokens. Returns NULL, or a description of the error. The
 * record is not trusted; the caller checks the ids. */
static inline const char *record_parse(RecordKind kind, int32_t token_bytes, const uint8_t *p, size_t bytes,
                                       uint32_t tokens, RecordParts *parts) {
    const uint8_t *head;
    uint32_t length[4] = {0};
    *parts = (RecordParts){.text = {"", "", "", ""}};
    if (tokens < 1 || tokens > INT32_MAX) return "has no tokens, or too many";
    static const uint8_t head_bytes[] = {
        [RECORD_CHAT] = 0, [RECORD_PROMPT] = 16, [RECORD_PREFERENCE] = 16, [RECORD_STEP] = 4, [RECORD_UNPAIRED] = 8};
    if (!(head = record_take(&p, &bytes, head_bytes[kind]))) return "is too short for its head";
    if (kind == RECORD_PREFERENCE) {
        memcpy(&parts->completions, head + 4, 4);
        if (parts->completions < 2) return "has fewer than two completions";
        if (!(parts->lengths = record_take(&p, &bytes, 4 * (size_t)parts->completions)))
            return "is too short for the lengths of its completions";
    }
    if (!(parts->ids = record_take(&p, &bytes, (size_t)tokens * (size_t)token_bytes)))
        return "is too short for its tokens";
    switch (kind) {
    case RECORD_CHAT:
        if (!(parts->mask = record_take(&p, &bytes, ((size_t)tokens + 7) / 8))) return "is too short for its mask";
        if (tokens % 8 && parts->mask[tokens / 8] >> tokens % 8) return "has mask bits beyond its last token";
        break;
    case RECORD_PROMPT:
        parts->prompt = (int32_t)tokens;
        memcpy(length, head, sizeof length);
        for (int i = 0; i < 4; i++) {
            parts->text[i] = (const char *)record_take(&p, &bytes, (size_t)length[i] + 1);
            if (!parts->text[i]) return "is too short for its texts";
            if (strnlen(parts->text[i], (size_t)length[i] + 1) != length[i])
                return "has a text whose length does not match";
        }
        break;
    case RECORD_PREFERENCE:
        memcpy(&parts->prompt, head, 4);
        memcpy(&parts->gold, head + 8, 4);
        memcpy(&parts->margin, head + 12, 4);
        if (!record_adds_up(parts, tokens))
            return "has lengths of prompt, completions and gold answer that do not add up to its tokens";
        if (!isfinite(parts->margin)) return "has a margin that is not finite";
        if (parts->margin != 0 && parts->completions > 2) return "has a margin and more than two completions";
        break;
    case RECORD_STEP:
        memcpy(&parts->prompt, head, 4);
        if (parts->prompt < 0 || (uint32_t)parts->prompt > tokens) return "has a prompt longer than its tokens";
        if (!(parts->mask = record_take(&p, &bytes, tokens))) return "is too short for its labels";
        break;
    case RECORD_UNPAIRED:
        memcpy(&parts->prompt, head, 4);
        memcpy(&parts->label, head + 4, 4);
        if (parts->prompt < 0 || (uint32_t)parts->prompt >= tokens) return "has no token after its prompt";
        if (parts->label < 0 || parts->label > 1) return "has a label that is neither 0 nor 1";
        break;
    }
    return bytes ? "has bytes left over" : NULL;
}

/* ---- reading ------------------------------------------------------------------------------------------------- */

static inline void shard_close(Shard *s) {
    for (int k = 0; k < s->parts; k++) shard_close(&s->part[k]);
    tokens_close(&s->text);
    free(s->start);
    free(s->part);
    free(s->first);
    free(s->name);
    free(s->tokenizer);
    free(s->chat_template);
    json_decref(s->clusters);
    if (s->map) mapping_free(s->map);
    else {
        free((void *)s->index);
        free((void *)s->payload);
    }
    *s = (Shard){0};
}

enum { SHARD_INDEX, SHARD_PAYLOAD, SHARD_TOKENIZER, SHARD_TEMPLATE, SHARD_CLUSTERS, SHARD_SECTIONS };

/* Reads and checks the header. sizes: bytes of each section. */
static inline bool shard_header(Shard *s, Reader *r, uint64_t sizes[SHARD_SECTIONS], Error *e) {
    int32_t h[SHARD_HEADER];
    uint64_t count, total;
    if (!reader_header(r, h, sizeof h, MAGIC_RECORDS, MAGIC_RECORDS, e)) return false;
    if (h[1] != SHARD_VERSION)
        return error_set(e, "%s: record shard of version %d, expected %d; make it again with data/make_shard", r->name,
                         (int)h[1], SHARD_VERSION);
    if (h[2] < RECORD_CHAT || h[2] > RECORD_UNPAIRED)
        return error_set(e, "%s: kind of record is %d, expected 1 to 5", r->name, (int)h[2]);
    if (h[3] < 1 || h[3] > SHARD_VOCAB_MAX)
        return error_set(e, "%s: vocabulary is %d, expected 1 to %d", r->name, (int)h[3], SHARD_VOCAB_MAX);
    if (h[4] != (h[3] > 65536 ? 4 : 2))
        return error_set(e, "%s: token ids have %d bytes, expected %d for a vocabulary of %d", r->name, (int)h[4],
                         h[3] > 65536 ? 4 : 2, (int)h[3]);
    for (int i = 6; i < SHARD_HEADER; i = i == 7 ? 20 : i + 1)
        if (h[i]) return error_set(e, "%s: header field %d is %d, expected 0", r->name, i, (int)h[i]);
    memcpy(&count, h + 8, 8);
    memcpy(&total, h + 10, 8);
    memcpy(sizes + SHARD_PAYLOAD, h + 12, 4 * sizeof *sizes);
    uint64_t end = sizeof h + 8; /* length of the file according to the header */
    bool fits = count <= INT64_MAX / sizeof(ShardIndex) && total <= INT64_MAX;
    sizes[SHARD_INDEX] = fits ? count * sizeof(ShardIndex) : 0;
    for (int i = 0; fits && i < SHARD_SECTIONS; i++)
        fits = !__builtin_add_overflow(end, sizes[i], &end) && end <= INT64_MAX;
    if (!fits || !sizes[SHARD_TEMPLATE] || sizes[SHARD_CLUSTERS] > CLUSTERS_TEXT_MAX)
        return error_set(e, "%s: sizes in the header are impossible for a file", r->name);
    const int64_t left = reader_left(r);
    if (left >= 0 && (uint64_t)left != end - sizeof h)
        return error_set(e, "%s: file ends at byte %lld, header (%llu records, %llu bytes of payload) needs %llu",
                         r->name, (long long)(sizeof h + (size_t)left), (unsigned long long)count,
                         (unsigned long long)sizes[SHARD_PAYLOAD], (unsigned long long)end);
    s->kind = (RecordKind)h[2];
    s->vocab = h[3];
    s->token_bytes = h[4];
    s->longest = h[5];
    s->count = (int64_t)count;
    s->total_tokens = (int64_t)total;
    s->payload_bytes = (size_t)sizes[SHARD_PAYLOAD];
    s->tokenizer_bytes = (size_t)sizes[SHARD_TOKENIZER];
    return true;
}

/* Checks that the records of the index are contiguous and that their bytes and tokens add up to the totals in the
 * header. */
static inline bool shard_check_index(const Shard *s, const char *name, Error *e) {
    uint64_t offset = 0, total = 0;
    uint32_t longest = 0;
    for (int64_t i = 0; i < s->count; i++) {
        const ShardIndex *x = &s->index[i];
        if (x->offset != offset || x->bytes > s->payload_bytes - offset)
            return error_set(e, "%s: record %lld at byte %llu of the payload has %u bytes, expected it at %llu of %zu",
                             name, (long long)i, (unsigned long long)x->offset, (unsigned)x->bytes,
                             (unsigned long long)offset, s->payload_bytes);
        offset += x->bytes;
        total += x->tokens;
        if (x->tokens > longest) longest = x->tokens;
    }
    if (offset != s->payload_bytes)
        return error_set(e, "%s: records take %llu bytes of the payload, the header has %zu", name,
                         (unsigned long long)offset, s->payload_bytes);
    if (total != (uint64_t)s->total_tokens || (int64_t)longest != s->longest)
        return error_set(e, "%s: records have %llu tokens, the longest %u; the header has %lld and %d", name,
                         (unsigned long long)total, (unsigned)longest, (long long)s->total_tokens, (int)s->longest);
    return true;
}

static inline bool shard_check_record(const Shard *s, int64_t i, const char *name, Error *e) {
    const ShardIndex *x = &s->index[i];
    RecordParts parts;
    const char *wrong = record_parse(s->kind, s->token_bytes, s->payload + x->offset, x->bytes, x->tokens, &parts);
    if (wrong) return error_set(e, "%s: record %lld %s", name, (long long)i, wrong);
    for (uint32_t k = 0; k < x->tokens; k++) {
        const int32_t id = record_id(parts.ids, s->token_bytes, k);
        if (id < 0 || id >= s->vocab)
            return error_set(e, "%s: record %lld: token %u is %d, expected below the vocabulary of %d", name,
                             (long long)i, (unsigned)k, (int)id, (int)s->vocab);
    }
    return true;
}

/* Checks and hashes the payload in one pass, and gives its pages back piece by piece. */
static inline bool shard_check_records(Shard *s, const char *name, Error *e) {
    XXH3_state_t *hash = (XXH3_state_t *)checked_object(XXH3_createState(), "the state of a hash");
    XXH3_64bits_reset(hash);
    bool ok = true;
    size_t done = 0;
    for (int64_t i = 0; ok && i <= s->count; i++) {
        const size_t offset = i < s->count ? (size_t)s->index[i].offset : s->payload_bytes;
        if (i == s->count || offset - done >= IO_PIECE) {
            XXH3_64bits_update(hash, s->payload + done, offset - done);
            mapping_forget(s->map, s->payload + done, offset - done);
            done = offset;
        }
        if (i < s->count) ok = shard_check_record(s, i, name, e);
    }
    s->payload_hash = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    return ok;
}

/* The next n bytes: a part of the mapping, or new memory. NULL on failure. */
static inline const void *shard_bytes(const Shard *s, Reader *r, uint64_t n, const char *what, Error *e) {
    return s->map ? (const void *)reader_lend(r, n, what, e) : reader_blob(r, n, what, e);
}

/* Reads the list of clusters; a shard may have none. */
static inline bool shard_read_clusters(Shard *s, Reader *r, uint64_t bytes, Error *e) {
    Error why;
    if (!bytes) return true;
    char *text = (char *)reader_blob(r, bytes, "clusters", e);
    if (!text) return false;
    const bool whole = strnlen(text, (size_t)bytes) + 1 == bytes;
    s->clusters = whole ? clusters_parse(text, &why) : NULL;
    free(text);
    return s->clusters || error_set(e, "%s: %s", r->name, whole ? why.text : "the list of clusters has no end");
}

/* Reads the parts in file order. Each is checked before memory is allocated for the next. */
static inline bool shard_body(Shard *s, Reader *r, Error *e) {
    uint64_t sizes[SHARD_SECTIONS];
    if (!shard_header(s, r, sizes, e)) return false;
    s->map = reader_map(r);
    if (!(s->index = (const ShardIndex *)shard_bytes(s, r, sizes[SHARD_INDEX], "index", e)) ||
        !shard_check_index(s, r->name, e))
        return false;
    if (!(s->payload = (const uint8_t *)shard_bytes(s, r, sizes[SHARD_PAYLOAD], "records", e))) return false;
    if (!(s->tokenizer = reader_blob(r, sizes[SHARD_TOKENIZER], "tokenizer", e))) return false;
    if (s->tokenizer_bytes) s->tokenizer_hash = XXH3_64bits(s->tokenizer, s->tokenizer_bytes);
    if (!(s->chat_template = (char *)reader_blob(r, sizes[SHARD_TEMPLATE], "chat template", e))) return false;
    if (!shard_read_clusters(s, r, sizes[SHARD_CLUSTERS], e)) return false;
    if (!reader_checksum(r, e)) return false;
    if (strlen(s->chat_template) + 1 != sizes[SHARD_TEMPLATE])
        return error_set(e, "%s: chat template has %zu bytes, the header has %llu", r->name,
                         strlen(s->chat_template) + 1, (unsigned long long)sizes[SHARD_TEMPLATE]);
    return shard_check_records(s, r->name, e);
}

/* Reads a whole record shard from an open reader, up to its end. */
static inline bool shard_read(Shard *s, Reader *r, Error *e) {
    *s = (Shard){.name = xstrdup(r->name)};
    if (shard_body(s, r, e)) return true;
    shard_close(s);
    return false;
}

/* Opens the shard `path` and checks it. */
static inline bool shard_open(Shard *s, const char *path, Error *e) {
    Reader r;
    *s = (Shard){0};
    if (!reader_open(&r, path, e)) return false;
    const bool ok = shard_read(s, &r, e);
    reader_close(&r);
    return ok;
}

/* Checks that shard b can be trained on together with shard a. A shard without a tokenizer fits every other. Chat
 * templates add tokens to a tokenizer, so that of a token shard is compared only if the vocabularies are equal. */
static inline bool shard_check_alike(const Shard *a, const Shard *b, Error *e) {
    if (b->kind != a->kind)
        return error_set(e, "%s: contains %s records, but %s contains %s records", b->name, record_kind_name(b->kind),
                         a->name, record_kind_name(a->kind));
    const bool text = a->text.name || b->text.name;
    const bool differ = a->tokenizer_hash && b->tokenizer_hash && a->tokenizer_hash != b->tokenizer_hash;
    if (text ? a->vocab == b->vocab && differ : a->vocab != b->vocab || differ)
        return error_set(e, "%s and %s: they were made with different tokenizers", a->name, b->name);
    if (!text && strcmp(a->chat_template, b->chat_template))
        return error_set(e, "%s and %s: they were made with different chat templates", a->name, b->name);
    return true;
}

/* Joins the clusters of the parts, if they all say what they are. */
static inline void shard_join_clusters(Shard *s) {
    bool all = true;
    for (int k = 0; k < s->parts; k++) all = all && s->part[k].clusters;
    if (!all) return;
    s->clusters = clusters_new(json_string_value(json_object_get(s->part[0].clusters, "field")));
    for (int k = 0; k < s->parts; k++) clusters_join(s->clusters, s->part[k].clusters);
}

/* Computes the totals of a shard of several files. */
static inline void shard_add_up(Shard *s) {
    s->count = s->total_tokens = s->longest = 0;
    s->payload_bytes = s->payload_hash = 0;
    for (int k = 0; k < s->parts; k++) {
        const Shard *p = &s->part[k];
        if (p->vocab > s->vocab) s->vocab = p->vocab;
        s->count += p->count;
        s->total_tokens += p->total_tokens;
        s->payload_bytes += p->payload_bytes;
        if (p->longest > s->longest) s->longest = p->longest;
        s->payload_hash = XXH3_64bits_withSeed(&p->payload_hash, sizeof p->payload_hash, s->payload_hash);
        s->first[k + 1] = s->count;
    }
}

/* Fills in a shard of several files from its parts. */
static inline void shard_join(Shard *s) {
    const Shard *a = &s->part[0]; /* the first one of records, which has a tokenizer and a template */
    for (int k = s->parts; k-- > 0;)
        if (!s->part[k].text.name) a = &s->part[k];
    char name[64];
    snprintf(name, sizeof name, " and %d more", s->parts - 1);
    *s = (Shard){.name = (char *)xmalloc(strlen(a->name) + sizeof name),
                 .kind = a->kind,
                 .vocab = a->vocab,
                 .token_bytes = a->token_bytes,
                 .tokenizer = xmalloc(a->tokenizer_bytes),
                 .tokenizer_bytes = a->tokenizer_bytes,
                 .tokenizer_hash = a->tokenizer_hash,
                 .chat_template = xstrdup(a->chat_template),
                 .part = s->part,
                 .parts = s->parts,
                 .first = (int64_t *)xcalloc((size_t)s->parts + 1, sizeof *s->first)};
    sprintf(s->name, "%s%s", s->part[0].name, name);
    memcpy(s->tokenizer, a->tokenizer, a->tokenizer_bytes);
    shard_join_clusters(s);
    shard_add_up(s);
}

/* The vocabulary of a token shard that does not say: GPT-2's, in which llm.c writes them, or that of the ids. */
static inline int32_t shard_text_vocab(const TokenShard *t) {
    if (t->meaning.vocab) return t->meaning.vocab;
    return t->highest > 256 && t->highest < 50257 ? 50257 : t->highest + 1;
}

/* Opens a token shard. Its records are those of shard_split(); until then a token counts as one. */
static inline bool shard_open_text(Shard *s, Reader *r, Error *e) {
    *s = (Shard){0};
    if (!tokens_read(&s->text, r, 0, e)) return false;
    s->name = xstrdup(r->name);
    s->chat_template = xstrdup("");
    s->kind = RECORD_CHAT;
    s->vocab = s->text.count ? shard_text_vocab(&s->text) : 1;
    s->count = s->total_tokens = s->text.count;
    s->payload_hash = s->text.hash;
    s->tokenizer_hash = s->text.meaning.tokenizer;
    return true;
}

/* Opens a record shard or, if `text`, a token shard. */
static inline bool shard_open_any(Shard *s, const char *path, bool text, Error *e) {
    Reader r;
    int32_t magic = 0;
    bool failed = false;
    *s = (Shard){0};
    if (!reader_open(&r, path, e)) return false;
    if (text) reader_peek(&r, &magic, sizeof magic, &failed, e);
    const bool ok = !failed && (tokens_magic(magic) ? shard_open_text(s, &r, e) : shard_read(s, &r, e));
    reader_close(&r);
    return ok;
}

/* Opens n >= 1 files as one shard. They must be alike, and none may be empty if there are several. text: token shards
 * may be among them. */
static inline bool shard_open_all(Shard *s, const char *const *paths, int n, bool text, Error *e) {
    if (n == 1) return shard_open_any(s, paths[0], text, e);
    *s = (Shard){.part = (Shard *)xcalloc((size_t)n, sizeof *s->part)};
    bool ok = true;
    for (int k = 0; ok && k < n; k++) {
        Shard *p = &s->part[k];
        if (!(ok = shard_open_any(p, paths[k], text, e))) break;
        s->parts++;
        if (!p->count) ok = error_set(e, "%s: the shard is empty", p->name);
        for (int i = 0; ok && i < k; i++) ok = shard_check_alike(&s->part[i], p, e);
    }
    if (ok) shard_join(s);
    else shard_close(s);
    return ok;
}

/* Divides the token shards among the files into records of at most max_length >= 2 tokens. start: the token that begins
 * a document in files that do not say, or -1: then such a file is one document. */
static inline void shard_split(Shard *s, int32_t max_length, int32_t start) {
    for (int k = 0; k < s->parts; k++) shard_split(&s->part[k], max_length, start);
    if (s->parts) shard_add_up(s);
    const TokenShard *t = &s->text;
    if (!t->name) return;
    if (t->meaning.vocab) start = t->meaning.start;
    int64_t capacity = 0, at = 0;
    free(s->start);
    s->start = NULL;
    s->count = 0;
    s->longest = 0;
    while (at + 1 < t->count) {
        int64_t end = at + 1; /* the last token of the record */
        while (end + 1 < t->count && end - at + 1 < max_length && token_at(t, end) != start) end++;
        if (s->count == capacity) {
            capacity = 2 * capacity + 64;
            s->start = (int64_t *)xrealloc(s->start, (size_t)capacity, sizeof *s->start);
        }
        s->start[s->count++] = at;
        if (end - at + 1 > s->longest) s->longest = (int32_t)(end - at + 1);
        at = end;
    }
    s->total_tokens = t->count;
    mapping_forget(t->map, t->ids, (size_t)t->count * (size_t)t->id_bytes);
}

/* The number of the file that record i is in, from 0. */
static inline int shard_file(const Shard *s, int64_t i) {
    int k = 0;
    while (s->parts && i >= s->first[k + 1]) k++;
    return k;
}

/* The file that record i is in; *i becomes its number there. */
static inline const Shard *shard_part(const Shard *s, int64_t *i) {
    if (!s->parts) return s;
    const int k = shard_file(s, *i);
    *i -= s->first[k];
    return &s->part[k];
}

/* The last token of record i of a token shard. */
static inline int64_t shard_text_end(const Shard *s, int64_t i) {
    return i + 1 < s->count ? s->start[i + 1] : s->text.count - 1;
}

/* The number of tokens of record i. */
static inline int64_t shard_length(const Shard *s, int64_t i) {
    const Shard *p = shard_part(s, &i);
    return p->text.name ? shard_text_end(p, i) - p->start[i] + 1 : p->index[i].tokens;
}

/* Copies record i of a token shard to r. capacity: tokens of the longest record. */
static inline void shard_text_record(const Shard *s, int64_t i, int32_t capacity, Record *r) {
    r->capacity = r->tokens && r->capacity > capacity ? r->capacity : capacity;
    r->tokens = (int32_t *)xrealloc(r->tokens, (size_t)r->capacity, sizeof *r->tokens);
    r->mask = (uint8_t *)xrealloc(r->mask, (size_t)r->capacity, 1);
    r->count = (int32_t)shard_length(s, i);
    mapping_touch(s->text.map, (size_t)r->count * (size_t)s->text.id_bytes);
    for (int32_t k = 0; k < r->count; k++) {
        r->tokens[k] = token_at(&s->text, s->start[i] + k);
        r->mask[k] = k > 0;
    }
    free(r->length);
    r->length = NULL;
    r->prompt = r->completions = r->gold = r->label = 0;
    r->margin = 0;
    r->text = r->task = r->answer = r->fields = "";
}

/* Decodes record i into r and reuses r's buffers. Initialise r with {0} and free it with record_free(). The texts of r
 * are valid as long as the shard. */
static inline bool shard_record(const Shard *all, int64_t i, Record *r, Error *e) {
    if (i < 0 || i >= all->count)
        return error_set(e, "%s: record %lld is out of range, the shard has %lld", all->name, (long long)i,
                         (long long)all->count);
    const Shard *s = shard_part(all, &i);
    if (s->text.name) {
        shard_text_record(s, i, all->longest, r);
        return true;
    }
    const ShardIndex copy = s->index[i], *x = &copy;
    mapping_touch(s->map, x->bytes);
    RecordParts parts;
    const char *wrong = "is not in the payload";
    if (x->offset <= s->payload_bytes && x->bytes <= s->payload_bytes - x->offset && x->tokens <= (uint32_t)s->longest)
        wrong = record_parse(s->kind, s->token_bytes, s->payload + x->offset, x->bytes, x->tokens, &parts);
    if (wrong) return error_set(e, "%s: record %lld %s", s->name, (long long)i, wrong);
    if (x->tokens > (uint32_t)r->capacity || !r->tokens) {
        r->capacity = all->longest; /* once for the whole shard */
        r->tokens = (int32_t *)xrealloc(r->tokens, (size_t)r->capacity, sizeof *r->tokens);
        free(r->mask), free(r->length);
        r->mask = NULL;
        r->length = NULL;
    }
    if (parts.mask && !r->mask) r->mask = (uint8_t *)xmalloc((size_t)r->capacity);
    if (!parts.mask) {
        free(r->mask);
        r->mask = NULL;
    }
    if (parts.lengths && !r->length) r->length = (int32_t *)xmalloc((size_t)r->capacity * sizeof *r->length);
    if (!parts.lengths) {
        free(r->length);
        r->length = NULL;
    }
    r->count = (int32_t)x->tokens;
    for (int32_t k = 0; k < r->count; k++) {
        r->tokens[k] = record_id(parts.ids, s->token_bytes, (size_t)k);
        if (r->tokens[k] < 0 || r->tokens[k] >= s->vocab)
            return error_set(e, "%s: record %lld has changed since it was opened", s->name, (long long)i);
    }
    for (int32_t k = 0; k < parts.completions; k++) r->length[k] = record_completion_tokens(&parts, k);
    parts.lengths = (const uint8_t *)r->length;
    if (s->kind == RECORD_PREFERENCE && !record_adds_up(&parts, x->tokens))
        return error_set(e, "%s: record %lld has changed since it was opened", s->name, (long long)i);
    if (s->kind == RECORD_CHAT)
        for (int32_t k = 0; k < r->count; k++) r->mask[k] = parts.mask[k / 8] >> k % 8 & 1;
    if (s->kind == RECORD_STEP) memcpy(r->mask, parts.mask, (size_t)r->count);
    r->prompt = parts.prompt;
    r->completions = parts.completions;
    r->gold = parts.gold;
    r->label = parts.label;
    r->margin = parts.margin;
    r->text = parts.text[0];
    r->task = parts.text[1];
    r->answer = parts.text[2];
    r->fields = parts.text[3];
    return true;
}

/* Warns that the gold answers of `golds` records are not used, if there are any. */
static inline void shard_warn_golds(const Shard *s, int64_t golds) {
    if (golds)
        warn("%s: the gold answers of %lld records (field reference) are not used: train_dpo --loss-type tpo trains on "
             "them",
             s->name, (long long)golds);
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

/* The header precedes the records and contains their count, so records are kept in memory until shard_commit(). */
typedef struct ShardWriter {
    Writer out;
    RecordKind kind;
    int32_t vocab, token_bytes, longest;
    int64_t count, index_capacity;
    uint64_t total_tokens;
    ShardIndex *index;
    uint8_t *payload;
    size_t payload_bytes, payload_capacity;
    void *tokenizer;
    size_t tokenizer_bytes;
    char *chat_template;
    char *clusters; /* clusters_text(), or NULL */
} ShardWriter;

/* Discards the shard and frees the writer, also after a failure. Safe after shard_commit(). */
static inline void shard_abort(ShardWriter *w) {
    writer_abort(&w->out);
    free(w->index);
    free(w->payload);
    free(w->tokenizer);
    free(w->chat_template);
    free(w->clusters);
    *w = (ShardWriter){.out.fd = -1};
}

/* Begins a shard of records of one kind, with ids below `vocab`. tokenizer: (tokenizer_bytes), may be NULL if that is
 * 0; chat_template: its text, may be NULL. Both are copied. */
static inline bool shard_create(ShardWriter *w, const char *path, RecordKind kind, int32_t vocab, const void *tokenizer,
                                size_t tokenizer_bytes, const char *chat_template, Error *e) {
    assert(kind >= RECORD_CHAT && kind <= RECORD_UNPAIRED);
    *w = (ShardWriter){.out.fd = -1, .kind = kind, .vocab = vocab, .token_bytes = vocab > 65536 ? 4 : 2};
    if (vocab < 1 || vocab > SHARD_VOCAB_MAX)
        return error_set(e, "%s: vocabulary is %d, expected 1 to %d", path, (int)vocab, SHARD_VOCAB_MAX);
    if (!writer_open(&w->out, path, e)) return false;
    w->tokenizer = xmalloc(tokenizer_bytes);
    if (tokenizer_bytes) memcpy(w->tokenizer, tokenizer, tokenizer_bytes);
    w->tokenizer_bytes = tokenizer_bytes;
    w->chat_template = xstrdup(chat_template ? chat_template : "");
    return true;
}

/* Returns a description of the error in a record to be added, or NULL. */
static inline const char *record_refused(RecordKind kind, const Record *r) {
    if (r->count < 1) return "has no tokens";
    if ((kind == RECORD_CHAT || kind == RECORD_STEP) && !r->mask) return "has no mask";
    if (kind == RECORD_STEP && (r->prompt < 0 || r->prompt > r->count)) return "has a prompt longer than its tokens";
    if (kind == RECORD_UNPAIRED && (r->prompt < 0 || r->prompt >= r->count)) return "has no token after its prompt";
    if (kind == RECORD_UNPAIRED && r->label != 0 && r->label != 1) return "has a label that is neither 0 nor 1";
    if (kind != RECORD_PREFERENCE) return NULL;
    if (r->completions < 2 || !r->length) return "has fewer than two completions";
    const RecordParts parts = {
        .lengths = (const uint8_t *)r->length, .prompt = r->prompt, .completions = r->completions, .gold = r->gold};
    if (!record_adds_up(&parts, (uint32_t)r->count)) return "has an empty completion or lengths that do not add up";
    if (!isfinite(r->margin)) return "has a margin that is not finite";
    if (r->margin != 0 && r->completions > 2) return "has a margin and more than two completions";
    return NULL;
}

/* Appends n bytes to the payload; shard_add() has made room. */
static inline void shard_append(ShardWriter *w, const void *src, size_t n) {
    if (n) memcpy(w->payload + w->payload_bytes, src, n);
    w->payload_bytes += n;
}

/* Appends n ids, of which a small vocabulary has two bytes. */
static inline void shard_append_ids(ShardWriter *w, const int32_t *ids, size_t n) {
    uint8_t *to = w->payload + w->payload_bytes;
    if (w->token_bytes == 4) {
        shard_append(w, ids, 4 * n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const uint16_t id = (uint16_t)ids[i];
        memcpy(to + 2 * i, &id, 2);
    }
    w->payload_bytes += 2 * n;
}

/* Returns the first id that is outside the vocabulary, or r->count. */
static inline int32_t record_bad_token(const Record *r, int32_t vocab) {
    bool bad = false;
    for (int32_t i = 0; i < r->count; i++) bad |= (uint32_t)r->tokens[i] >= (uint32_t)vocab;
    if (!bad) return r->count;
    int32_t i = 0;
    while ((uint32_t)r->tokens[i] < (uint32_t)vocab) i++;
    return i;
}

/* Adds a record. Fields that its kind does not have are ignored; a text may be NULL for "". */
static inline bool shard_add(ShardWriter *w, const Record *r, Error *e) {
    const char *name = w->out.name, *wrong = record_refused(w->kind, r);
    if (wrong) return error_set(e, "%s: record %lld %s", name, (long long)w->count, wrong);
    const int32_t bad = record_bad_token(r, w->vocab);
    if (bad < r->count)
        return error_set(e, "%s: record %lld: token %d is %d, expected below the vocabulary of %d", name,
                         (long long)w->count, (int)bad, (int)r->tokens[bad], (int)w->vocab);
    const char *text[4] = {r->text, r->task, r->answer, r->fields};
    uint32_t length[4] = {0};
    size_t bytes = 16 + (size_t)r->count * ((size_t)w->token_bytes + 1); /* maximum size of head, ids and mask */
    if (w->kind == RECORD_PREFERENCE) bytes += (size_t)r->completions * sizeof *r->length;
    if (w->kind == RECORD_PROMPT)
        for (int i = 0; i < 4; i++) {
            const size_t n = text[i] ? strlen(text[i]) : 0;
            length[i] = (uint32_t)n;
            bytes += n + 1;
        }
    if (bytes > UINT32_MAX)
        return error_set(e, "%s: record %lld has %zu bytes, expected at most 4294967295", name, (long long)w->count,
                         bytes);
    if (w->payload_capacity - w->payload_bytes < bytes) {
        w->payload_capacity = 2 * w->payload_capacity + bytes;
        w->payload = (uint8_t *)xrealloc(w->payload, w->payload_capacity, 1);
    }
    if (w->count == w->index_capacity) {
        w->index_capacity = 2 * w->index_capacity + 64;
        w->index = (ShardIndex *)xrealloc(w->index, (size_t)w->index_capacity, sizeof *w->index);
    }
    const size_t start = w->payload_bytes;
    if (w->kind == RECORD_PROMPT) shard_append(w, length, sizeof length);
    if (w->kind == RECORD_PREFERENCE || w->kind == RECORD_STEP || w->kind == RECORD_UNPAIRED)
        shard_append(w, &r->prompt, 4);
    if (w->kind == RECORD_UNPAIRED) shard_append(w, &r->label, 4);
    if (w->kind == RECORD_PREFERENCE) {
        shard_append(w, &r->completions, 4);
        shard_append(w, &r->gold, 4);
        shard_append(w, &r->margin, 4);
        shard_append(w, r->length, (size_t)r->completions * sizeof *r->length);
    }
    shard_append_ids(w, r->tokens, (size_t)r->count);
    if (w->kind == RECORD_CHAT)
        for (int32_t i = 0; i < r->count; i += 8) {
            uint8_t bits = 0;
            for (int32_t k = i; k < i + 8 && k < r->count; k++) bits |= (uint8_t)((r->mask[k] != 0) << (k - i));
            shard_append(w, &bits, 1);
        }
    if (w->kind == RECORD_STEP) shard_append(w, r->mask, (size_t)r->count);
    if (w->kind == RECORD_PROMPT)
        for (int i = 0; i < 4; i++) shard_append(w, text[i] ? text[i] : "", length[i] + 1);
    w->index[w->count++] = (ShardIndex){start, (uint32_t)(w->payload_bytes - start), (uint32_t)r->count};
    w->total_tokens += (uint32_t)r->count;
    if (r->count > w->longest) w->longest = r->count;
    return true;
}

/* Says which clusters the records are of. */
static inline void shard_describe(ShardWriter *w, const json_t *clusters) {
    free(w->clusters);
    w->clusters = clusters_text(clusters);
}

/* Replaces the records by `count` of them, in the order of `record`, their numbers, which may repeat. */
static inline void shard_arrange(ShardWriter *w, const int64_t *record, int64_t count) {
    ShardIndex *index = (ShardIndex *)xmalloc(((size_t)count + 1) * sizeof *index);
    uint64_t bytes = 0;
    w->total_tokens = 0;
    w->longest = 0;
    for (int64_t i = 0; i < count; i++) {
        assert(record[i] >= 0 && record[i] < w->count);
        const ShardIndex *from = &w->index[record[i]];
        index[i] = (ShardIndex){bytes, from->bytes, from->tokens};
        bytes += from->bytes;
        w->total_tokens += from->tokens;
        if ((int64_t)from->tokens > w->longest) w->longest = (int32_t)from->tokens;
    }
    uint8_t *payload = (uint8_t *)xmalloc((size_t)bytes + 1);
    for (int64_t i = 0; i < count; i++)
        memcpy(payload + index[i].offset, w->payload + w->index[record[i]].offset, index[i].bytes);
    free(w->index), free(w->payload);
    w->index = index;
    w->payload = payload;
    w->count = w->index_capacity = count;
    w->payload_bytes = w->payload_capacity = (size_t)bytes;
}

/* Writes the shard and closes the writer, whatever the result. */
static inline bool shard_commit(ShardWriter *w, Error *e) {
    int32_t h[SHARD_HEADER] = {MAGIC_RECORDS, SHARD_VERSION, (int32_t)w->kind, w->vocab, w->token_bytes, w->longest};
    const uint64_t template_bytes = strlen(w->chat_template) + 1;
    const uint64_t clusters_bytes = w->clusters ? strlen(w->clusters) + 1 : 0;
    const uint64_t wide[6] = {(uint64_t)w->count, w->total_tokens, w->payload_bytes,
                              w->tokenizer_bytes, template_bytes,  clusters_bytes};
    memcpy(h + 8, wide, sizeof wide);
    Writer *out = &w->out;
    const bool ok =
        writer_write(out, h, sizeof h, e) && writer_write(out, w->index, (size_t)w->count * sizeof *w->index, e) &&
        writer_write(out, w->payload, w->payload_bytes, e) && writer_write(out, w->tokenizer, w->tokenizer_bytes, e) &&
        writer_write(out, w->chat_template, (size_t)template_bytes, e) &&
        (!w->clusters || writer_write(out, w->clusters, (size_t)clusters_bytes, e)) && writer_checksum(out, e) &&
        writer_commit(out, e);
    shard_abort(w);
    return ok;
}

#endif
