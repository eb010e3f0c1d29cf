/* test_shard.c - shard.h and tokens.h: every kind of record, exact bytes, pipes and zstd, damaged files. */
#include "../llmc/base/error.h"       /* Error, xstrdup, xmalloc */
#include "../llmc/base/file_kind.h"   /* MAGIC_RECORDS */
#include "../llmc/base/io.h"          /* XXH3_64bits, reader_close, Reader, reader_memory */
#include "../llmc/base/map.h"         /* mapping_list */
#include "../llmc/base/program.h"     /* program_start */
#include "../llmc/records/clusters.h" /* CLUSTER_UNKNOWN, clusters_add, CLUSTER_TRAINED, CLUSTER_HELD_OUT, ... */
#include "files.h"                    /* files_path, files_assert_error, files_get, files_restore, ... */

#include "../llmc/records/shard.h"  /* RECORD_CHAT, RECORD_PROMPT, Record, shard_close, ... */
#include "../llmc/records/tokens.h" /* tokens_open, tokens_write, tokens_close, TokenMeaning, ... */

static const RecordKind kinds[] = {RECORD_CHAT, RECORD_PROMPT, RECORD_PREFERENCE, RECORD_STEP, RECORD_UNPAIRED};
enum { KINDS = sizeof kinds / sizeof *kinds };
static const int32_t vocabs[] = {300, 65536, 65537};

/* Record i of a kind, with values that depend on i alone. The buffers are static. */
static Record sample(RecordKind kind, int32_t vocab, int i) {
    static int32_t tokens[64];
    static uint8_t mask[64];
    static int32_t length[4];
    static char text[3][32];
    Record r = {.tokens = tokens, .count = 3 + i * 5 % 23};
    const unsigned last = (unsigned)vocab - 1;
    for (int k = 0; k < r.count; k++) tokens[k] = (int32_t)((last - 7919u * (unsigned)(i + k)) % (unsigned)vocab);
    tokens[0] = vocab - 1;
    if (kind == RECORD_CHAT || kind == RECORD_STEP) r.mask = mask;
    for (int k = 0; k < r.count; k++) mask[k] = kind == RECORD_CHAT ? (i + k) % 3 == 0 : (uint8_t)((i + k) % 4);
    if (kind == RECORD_PROMPT) {
        snprintf(text[0], sizeof text[0], "%d+%d=", i, i);
        snprintf(text[1], sizeof text[1], "%d", 2 * i);
        snprintf(text[2], sizeof text[2], "{\"level\": %d}", i);
        r.prompt = r.count;
        r.text = text[0];
        r.task = i % 2 ? "numeric" : "";
        r.answer = text[1];
        r.fields = text[2];
    }
    if (kind == RECORD_PREFERENCE) {
        r.completions = r.count < 8 ? 2 : 2 + i % 3;
        r.length = length;
        r.prompt = r.count;
        for (int k = 0; k < r.completions; k++) {
            length[k] = 1 + (k == 1) * (i % 2);
            r.prompt -= length[k];
        }
        r.gold = i % 2 && r.prompt > 0; /* one token of the prompt */
        r.prompt -= r.gold;
        if (r.completions == 2) r.margin = (float)i * 0.5f;
    }
    if (kind == RECORD_STEP) r.prompt = i % 3;
    if (kind == RECORD_UNPAIRED) {
        r.prompt = i % 3;
        r.label = i % 2;
    }
    return r;
}

static void put_shard(const char *path, RecordKind kind, int32_t vocab, int records) {
    Error e = {""};
    ShardWriter w;
    bool ok = shard_create(&w, path, kind, vocab, "tok\0blob", 8, "{user}\n", &e);
    for (int i = 0; ok && i < records; i++) {
        const Record r = sample(kind, vocab, i);
        ok = shard_add(&w, &r, &e);
    }
    if (vocab == 70000) { /* every other shard says which clusters its records are of */
        json_t *all = clusters_new("cluster");
        clusters_add(all, "a"), clusters_add(all, "b"), clusters_add(all, NULL);
        shard_describe(&w, all);
        json_decref(all);
    }
    if (!ok || !shard_commit(&w, &e)) fail_msg("%s", e.text);
}

static void assert_shard(const char *path, RecordKind kind, int32_t vocab, int records) {
    Error e;
    Shard s;
    Record r = {0};
    int64_t total = 0, longest = 0;
    if (!shard_open(&s, path, &e)) fail_msg("%s", e.text);
    assert_int_equal(s.kind, kind);
    assert_int_equal(s.vocab, vocab);
    assert_int_equal(s.count, records);
    assert_int_equal(s.tokenizer_bytes, 8);
    assert_memory_equal(s.tokenizer, "tok\0blob", 8);
    assert_string_equal(s.chat_template, "{user}\n");
    for (int turn = 0; turn < 2 * records; turn++) { /* forwards, then backwards */
        const int i = turn < records ? turn : 2 * records - 1 - turn;
        const Record x = sample(kind, vocab, i);
        assert_true(shard_record(&s, i, &r, &e));
        assert_int_equal(r.count, x.count);
        assert_memory_equal(r.tokens, x.tokens, (size_t)x.count * 4);
        if (x.mask) assert_memory_equal(r.mask, x.mask, (size_t)x.count);
        else assert_null(r.mask);
        assert_int_equal(r.prompt, x.prompt);
        assert_int_equal(r.completions, x.completions);
        assert_int_equal(r.gold, x.gold);
        if (x.length) assert_memory_equal(r.length, x.length, (size_t)x.completions * sizeof *x.length);
        else assert_null(r.length);
        assert_true(r.margin == x.margin);
        assert_int_equal(r.label, x.label);
        assert_string_equal(r.text, x.text ? x.text : "");
        assert_string_equal(r.task, x.task ? x.task : "");
        assert_string_equal(r.answer, x.answer ? x.answer : "");
        assert_string_equal(r.fields, x.fields ? x.fields : "");
        total += turn < records ? x.count : 0;
        if (x.count > longest) longest = x.count;
    }
    assert_int_equal(s.total_tokens, total);
    assert_int_equal(s.longest, longest);
    assert_false(shard_record(&s, records, &r, &e));
    files_assert_error(&e, "is out of range, the shard has");
    assert_false(shard_record(&s, -1, &r, &e));
    record_free(&r);
    shard_close(&s);
}

static void round_trips(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++)
        for (int v = 0; v < 3; v++)
            for (int records = 0; records < 100; records += 99) {
                size_t n;
                const char *plain = files_path("trip.shard"), *packed = files_path("trip.shard.zst");
                put_shard(plain, kinds[k], vocabs[v], records);
                assert_shard(plain, kinds[k], vocabs[v], records);
                put_shard(packed, kinds[k], vocabs[v], records);
                assert_shard(packed, kinds[k], vocabs[v], records);
                uint8_t *file = files_get(plain, &n);
                files_feed_stdin(file, n, 500);
                assert_shard("-", kinds[k], vocabs[v], records);
                files_restore(0);
                files_catch_stdout(files_path("caught.shard"));
                put_shard("-", kinds[k], vocabs[v], records);
                files_restore(1);
                files_assert_content(files_path("caught.shard"), file, n);
                free(file);
            }
}

/* A Record used with one shard can be reused with another, for another kind and length. */
static void reused_record(void **state) {
    (void)state;
    Error e;
    Record r = {0};
    for (int turn = 0; turn < 8; turn++) {
        Shard s;
        const RecordKind kind = kinds[turn * 3 % KINDS];
        put_shard(files_path("reuse.shard"), kind, 300, 1 + turn * 5 % 7);
        assert_true(shard_open(&s, files_path("reuse.shard"), &e));
        for (int i = 0; i < s.count; i++) {
            assert_true(shard_record(&s, i, &r, &e));
            const Record x = sample(kind, 300, i);
            assert_memory_equal(r.tokens, x.tokens, (size_t)x.count * 4);
            assert_int_equal(r.mask != NULL, x.mask != NULL);
            if (x.mask) assert_memory_equal(r.mask, x.mask, (size_t)x.count);
        }
        shard_close(&s);
    }
    record_free(&r);
}

static void exact_bytes(void **state) {
    (void)state;
    Error e;
    ShardWriter w;
    size_t n;
    const char *path = files_path("exact.shard");
    int32_t one[] = {1, 258, 299}, two[] = {7, 8, 9, 10, 11, 12, 13, 14, 15};
    uint8_t first[] = {0, 1, 1}, second[] = {1, 0, 0, 0, 0, 0, 0, 1, 1};
    const Record a = {.tokens = one, .count = 3, .mask = first}, b = {.tokens = two, .count = 9, .mask = second};
    assert_true(shard_create(&w, path, RECORD_CHAT, 300, "T", 1, "ab", &e));
    assert_true(shard_add(&w, &a, &e) && shard_add(&w, &b, &e) && shard_commit(&w, &e));
    uint8_t *file = files_get(path, &n);
    const uint8_t header[] = {
        0x04, 0x29, 0x35, 0x01, 3, 0, 0, 0, 1, 0, 0, 0, 44, 1, 0, 0, 2, 0, 0, 0,
        9,    0,    0,    0,    0, 0, 0, 0, 0, 0, 0, 0, 2,  0, 0, 0, 0, 0, 0, 0, /* records */
        12,   0,    0,    0,    0, 0, 0, 0,                                      /* tokens */
        27,   0,    0,    0,    0, 0, 0, 0,                                      /* payload */
        1,    0,    0,    0,    0, 0, 0, 0,                                      /* tokenizer */
        3,    0,    0,    0,    0, 0, 0, 0,                                      /* template */
    };
    const uint8_t body[] = {0, 0, 0, 0, 0,  0, 0,  0, 7,  0, 0,  0, 3,  0, 0,  0, /* index */
                            7, 0, 0, 0, 0,  0, 0,  0, 20, 0, 0,  0, 9,  0, 0,  0, /**/
                            1, 0, 2, 1, 43, 1, 6,                                 /**/
                            7, 0, 8, 0, 9,  0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15, 0, 0x81, 1, 'T', 'a', 'b', 0};
    assert_int_equal(n, 1024 + sizeof body + 8);
    assert_memory_equal(file, header, sizeof header);
    for (size_t i = sizeof header; i < 1024; i++) assert_int_equal(file[i], 0);
    assert_memory_equal(file + 1024, body, sizeof body);
    const uint64_t hash = XXH3_64bits(file, n - 8);
    assert_memory_equal(file + n - 8, &hash, 8);
    free(file);
}

/* ---- damage -------------------------------------------------------------------------------------------------- */

/* Not inlined, because gcc would otherwise warn about the code for files, which a reader of memory never reaches. */
__attribute__((noinline)) static bool open_memory(const void *file, size_t n, Error *e) {
    Reader r;
    Shard s;
    if (!reader_memory(&r, file, n, e)) return false;
    const bool ok = shard_read(&s, &r, e);
    reader_close(&r);
    if (ok) shard_close(&s);
    return ok;
}

static bool open_path(const char *path, Error *e) {
    Shard s;
    const bool ok = shard_open(&s, path, e);
    if (ok) shard_close(&s);
    return ok;
}

static void truncated_everywhere(void **state) {
    (void)state;
    Error e;
    for (int k = 0; k < KINDS; k++)
        for (int packed = 0; packed < 2; packed++) {
            size_t n;
            const char *path = files_path(packed ? "cut.shard.zst" : "cut.shard");
            put_shard(path, kinds[k], k % 2 ? 70000 : 300, 3);
            uint8_t *file = files_get(path, &n);
            assert_true(open_memory(file, n, &e));
            for (size_t cut = n; cut-- > 0;) {
                assert_int_equal(truncate(path, (off_t)cut), 0);
                e.text[0] = 0;
                assert_false(open_path(path, &e));
                files_assert_error(&e, "cut.shard");
                assert_false(open_memory(file, cut, NULL));
                if (cut % 97) continue;
                files_feed_stdin(file, cut, 300); /* the length is not known before the end */
                const bool ok = open_path("-", &e);
                files_restore(0);
                assert_false(ok);
                files_assert_error(&e, "standard input: ");
            }
            free(file);
        }
}

static void flipped_everywhere(void **state) {
    (void)state;
    Error e;
    for (int k = 0; k < KINDS; k++) {
        size_t n;
        put_shard(files_path("flip.shard"), kinds[k], k % 2 ? 70000 : 300, 3);
        uint8_t *file = files_get(files_path("flip.shard"), &n);
        for (size_t at = 0; at < n; at++)
            for (int bit = 0; bit < 8; bit++) {
                file[at] ^= (uint8_t)(1 << bit);
                e.text[0] = 0;
                if (open_memory(file, n, &e)) fail_msg("bit %d of byte %zu", bit, at);
                files_assert_error(&e, "memory: ");
                file[at] ^= (uint8_t)(1 << bit);
            }
        free(file);
    }
}

/* Overwrites `bytes` bytes at `at` by `value`, and appends the right checksum. */
static void patch(uint8_t *file, size_t n, size_t at, uint64_t value, size_t bytes) {
    memcpy(file + at, &value, bytes);
    const uint64_t hash = XXH3_64bits(file, n - 8);
    memcpy(file + n - 8, &hash, 8);
}

/* Damage with a valid checksum, as if a faulty or hostile program had written the file. */
static void wrong_fields(void **state) {
    (void)state;
    Error e;
    /* sample() gives the first two records 3 and 8 tokens; the index has 32 bytes */
    enum { INDEX = 1024, RECORDS = INDEX + 32, SECOND = RECORDS + 30 /* of preferences */ };
    static const struct {
        RecordKind kind;
        size_t at, bytes;
        uint64_t value;
        const char *part;
    } wrong[] = {
        {RECORD_CHAT, 0, 4, 20240326, "memory: this is a checkpoint, expected a record shard"},
        {RECORD_CHAT, 0, 4, 20240520, "memory: this is a token shard, expected a record shard"},
        {RECORD_CHAT, 0, 4, 7, "memory: this is a file of an unknown kind, expected a record shard"},
        {RECORD_CHAT, 4, 4, 2, "memory: record shard of version 2, expected 3"}, /* preferences had another head */
        {RECORD_CHAT, 4, 4, 4, "memory: record shard of version 4, expected 3"},
        {RECORD_CHAT, 8, 4, 0, "kind of record is 0, expected 1 to 5"},
        {RECORD_CHAT, 8, 4, 6, "kind of record is 6"},
        {RECORD_CHAT, 8, 4, RECORD_STEP, "record 0 is too short for its tokens"},
        {RECORD_CHAT, 8, 4, RECORD_PROMPT, "record 0 is too short for its head"},
        {RECORD_CHAT, 12, 4, 0, "vocabulary is 0, expected 1 to 4194304"},
        {RECORD_CHAT, 12, 4, UINT32_MAX, "vocabulary is -1"},
        {RECORD_CHAT, 12, 4, INT32_MAX, "vocabulary is 2147483647"},
        {RECORD_CHAT, 12, 4, 299, "record 0: token 0 is 299, expected below the vocabulary of 299"},
        {RECORD_CHAT, 16, 4, 4, "token ids have 4 bytes, expected 2 for a vocabulary of 300"},
        {RECORD_CHAT, 20, 4, 9, "records have 11 tokens, the longest 8; the header has 11 and 9"},
        {RECORD_CHAT, 20, 4, UINT32_MAX, "header has 11 and -1"},
        {RECORD_CHAT, 24, 4, 1, "header field 6 is 1, expected 0"},
        {RECORD_CHAT, 72, 8, 1, "file ends at byte"},
        {RECORD_CHAT, 72, 8, (uint64_t)1 << 40, "sizes in the header are impossible for a file"},
        {RECORD_CHAT, 80, 4, 1, "header field 20 is 1, expected 0"},
        {RECORD_CHAT, 1020, 4, 1, "header field 255 is 1, expected 0"},
        {RECORD_CHAT, 32, 8, 3, "header (3 records, "},
        {RECORD_CHAT, 32, 8, 1, "header (1 records, "},
        {RECORD_CHAT, 32, 8, UINT64_MAX, "sizes in the header are impossible for a file"},
        {RECORD_CHAT, 32, 8, (uint64_t)1 << 60, "sizes in the header are impossible for a file"}, /* times 16: 0 */
        {RECORD_CHAT, 40, 8, 12, "header has 12 and 8"},
        {RECORD_CHAT, 40, 8, UINT64_MAX, "sizes in the header are impossible for a file"},
        {RECORD_CHAT, 48, 8, INT64_MAX, "sizes in the header are impossible for a file"},
        {RECORD_CHAT, 48, 8, (uint64_t)1 << 40, "1099511627776 bytes of payload) needs"},
        {RECORD_CHAT, 56, 8, (uint64_t)1 << 31, "file ends at byte"},
        {RECORD_CHAT, 64, 8, 0, "sizes in the header are impossible for a file"},
        {RECORD_CHAT, INDEX, 8, 1, "record 0 at byte 1 of the payload"},
        {RECORD_CHAT, INDEX + 8, 4, 8, "record 1 at byte 7 of the payload"},
        {RECORD_CHAT, INDEX + 16, 8, 0, "record 1 at byte 0 of the payload"},
        {RECORD_CHAT, INDEX + 16, 8, UINT64_MAX, "record 1 at byte 18446744073709551615 of the payload"},
        {RECORD_CHAT, INDEX + 24, 4, UINT32_MAX, "record 1 at byte 7 of the payload has 4294967295 bytes"},
        {RECORD_CHAT, INDEX + 24, 4, 16, "records take 23 bytes of the payload, the header has 24"},
        {RECORD_CHAT, INDEX + 12, 4, UINT32_MAX, "records have 4294967303 tokens"},
        {RECORD_CHAT, RECORDS, 2, 300, "record 0: token 0 is 300, expected below the vocabulary of 300"},
        {RECORD_CHAT, RECORDS + 6, 1, 8, "record 0 has mask bits beyond its last token"},
        {RECORD_PROMPT, RECORDS, 4, 3, "record 0 has a text whose length does not match"},
        {RECORD_PROMPT, RECORDS, 4, UINT32_MAX, "record 0 is too short for its texts"},
        {RECORD_PROMPT, RECORDS + 12, 4, 1000, "record 0 is too short for its texts"},
        {RECORD_PROMPT, RECORDS + 12, 4, 11, "record 0 has a text whose length does not match"},
        {RECORD_PROMPT, RECORDS + 23, 1, 0, "record 0 has a text whose length does not match"},
        {RECORD_PREFERENCE, RECORDS, 4, 0,
         "record 0 has lengths of prompt, completions and gold answer that do not add up"},
        {RECORD_PREFERENCE, RECORDS, 4, UINT32_MAX, "record 0 has lengths of prompt, completions and gold answer"},
        {RECORD_PREFERENCE, RECORDS + 4, 4, 0, "record 0 has fewer than two completions"},
        {RECORD_PREFERENCE, RECORDS + 4, 4, UINT32_MAX, "record 0 has fewer than two completions"},
        {RECORD_PREFERENCE, RECORDS + 4, 4, 3, "record 0 is too short for its tokens"},
        {RECORD_PREFERENCE, RECORDS + 4, 4, INT32_MAX, "record 0 is too short for the lengths of its completions"},
        {RECORD_PREFERENCE, RECORDS + 8, 4, 1, "record 0 has lengths of prompt, completions and gold answer"},
        {RECORD_PREFERENCE, RECORDS + 8, 4, UINT32_MAX, "record 0 has lengths of prompt, completions and gold answer"},
        {RECORD_PREFERENCE, RECORDS + 16, 4, 0, "record 0 has lengths of prompt, completions and gold answer"},
        {RECORD_PREFERENCE, RECORDS + 16, 4, UINT32_MAX, "record 0 has lengths of prompt, completions and gold answer"},
        {RECORD_PREFERENCE, RECORDS + 20, 4, INT32_MAX, "record 0 has lengths of prompt, completions and gold answer"},
        {RECORD_PREFERENCE, RECORDS + 12, 4, 0x7f800000, "record 0 has a margin that is not finite"},
        {RECORD_PREFERENCE, SECOND + 12, 4, 0x3f800000, "record 1 has a margin and more than two completions"},
        {RECORD_STEP, 8, 4, RECORD_CHAT, "record 0 has mask bits beyond"},
        {RECORD_STEP, RECORDS, 4, 4, "record 0 has a prompt longer than its tokens"},
        {RECORD_STEP, RECORDS, 4, UINT32_MAX, "record 0 has a prompt longer than its tokens"},
        {RECORD_UNPAIRED, RECORDS, 4, 3, "record 0 has no token after its prompt"},
        {RECORD_UNPAIRED, RECORDS, 4, UINT32_MAX, "record 0 has no token after its prompt"},
        {RECORD_UNPAIRED, RECORDS + 4, 4, 2, "record 0 has a label that is neither 0 nor 1"},
        {RECORD_UNPAIRED, RECORDS + 4, 4, UINT32_MAX, "record 0 has a label that is neither 0 nor 1"},
        {RECORD_UNPAIRED, 8, 4, RECORD_PREFERENCE, "record 0 is too short for its head"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        size_t n;
        put_shard(files_path("wrong.shard"), wrong[i].kind, 300, 2);
        uint8_t *file = files_get(files_path("wrong.shard"), &n);
        patch(file, n, wrong[i].at, wrong[i].value, wrong[i].bytes);
        e.text[0] = 0;
        assert_false(open_memory(file, n, &e));
        files_assert_error(&e, wrong[i].part);
        files_feed_stdin(file, n, 999);
        const bool ok = open_path("-", &e);
        files_restore(0);
        assert_false(ok);
        files_assert_error(&e, "standard input: ");
        free(file);
    }
    size_t n;
    put_shard(files_path("wrong.shard"), RECORD_CHAT, 70000, 2); /* four bytes per token: ids can be negative */
    uint8_t *file = files_get(files_path("wrong.shard"), &n);
    patch(file, n, RECORDS, (uint32_t)-1, 4);
    assert_false(open_memory(file, n, &e));
    files_assert_error(&e, "record 0: token 0 is -1, expected below the vocabulary of 70000");
    free(file);
    put_shard(files_path("wrong.shard"), RECORD_CHAT, 300, 2);
    file = files_get(files_path("wrong.shard"), &n);
    patch(file, n, n - 12, 0, 1); /* a NUL inside the template */
    assert_false(open_memory(file, n, &e));
    files_assert_error(&e, "chat template has 5 bytes, the header has 8");
    free(file);
    put_shard(files_path("wrong.shard"), RECORD_CHAT, 300, 2);
    file = files_get(files_path("wrong.shard"), &n);
    file[n - 1] ^= 1;
    assert_false(open_memory(file, n, &e));
    files_assert_error(&e, "the file is damaged");
    file = realloc(file, n + 1);
    files_put(files_path("wrong.shard"), file, n + 1);
    assert_false(open_path(files_path("wrong.shard"), &e));
    files_assert_error(&e, "wrong.shard: file ends at byte");
    free(file);
}

static void not_files(void **state) {
    (void)state;
    Error e;
    assert_false(open_path(files_path("absent.shard"), &e));
    files_assert_error(&e, "absent.shard: cannot open: No such file or directory");
    assert_false(open_path(files_directory, &e));
    files_assert_error(&e, "is a directory, expected a file");
    files_put(files_path("empty.shard"), "", 0);
    assert_false(open_path(files_path("empty.shard"), &e));
    files_assert_error(&e, "empty.shard: this is an empty file, expected a record shard");
}

static void refused_records(void **state) {
    (void)state;
    Error e;
    ShardWriter w;
    const char *path = files_path("kept.shard");
    files_put(path, "earlier", 7);
    const int files = files_count();
    for (int k = 0; k < KINDS; k++)
        for (int fault = 0; fault < 8; fault++) {
            int32_t vocab = 300;
            Record r = sample(kinds[k], vocab, 1);
            const char *part = NULL;
            if (fault == 0) {
                r.count = 0;
                part = "record 0 has no tokens";
            }
            if (fault == 1) {
                r.tokens[2] = vocab;
                part = "record 0: token 2 is 300, expected below the vocabulary of 300";
            }
            if (fault == 2) {
                r.tokens[1] = -1;
                part = "record 0: token 1 is -1, expected below the vocabulary of 300";
            }
            if (fault == 3 && r.mask) {
                r.mask = NULL;
                part = "record 0 has no mask";
            }
            if (fault == 4 && kinds[k] == RECORD_PREFERENCE) {
                r.length[1] = 0;
                part = "has an empty completion or lengths that do not add up";
            }
            if (fault == 5 && kinds[k] == RECORD_PREFERENCE) {
                r.prompt++;
                part = "has an empty completion or lengths that do not add up";
            }
            if (fault == 6 && kinds[k] == RECORD_PREFERENCE) {
                r.completions = 1;
                part = "has fewer than two completions";
            }
            if (fault == 7 && kinds[k] == RECORD_PREFERENCE) {
                r.margin = 1;
                part = "has a margin and more than two completions";
            }
            if (fault == 5 && kinds[k] == RECORD_STEP) {
                r.prompt = 99;
                part = "has a prompt longer than its tokens";
            }
            if (fault == 4 && kinds[k] == RECORD_UNPAIRED) {
                r.label = 2;
                part = "has a label that is neither 0 nor 1";
            }
            if (fault == 5 && kinds[k] == RECORD_UNPAIRED) {
                r.prompt = r.count;
                part = "has no token after its prompt";
            }
            if (!part) continue;
            assert_true(shard_create(&w, path, kinds[k], vocab, NULL, 0, NULL, &e));
            assert_false(shard_add(&w, &r, &e));
            files_assert_error(&e, part);
            shard_abort(&w);
            shard_abort(&w);
            assert_int_equal(files_count(), files);
            files_assert_content(path, "earlier", 7);
        }
    assert_false(shard_create(&w, path, RECORD_CHAT, 0, NULL, 0, NULL, &e));
    files_assert_error(&e, "kept.shard: vocabulary is 0, expected 1 to 4194304");
    assert_false(shard_create(&w, files_path("absent/x"), RECORD_CHAT, 300, NULL, 0, NULL, &e));
    files_assert_error(&e, "absent/x: cannot create a temporary file in its directory: No such file or directory");
    shard_abort(&w);
    assert_true(shard_create(&w, "/dev/full", RECORD_CHAT, 300, NULL, 0, NULL, &e));
    assert_false(shard_commit(&w, &e));
    files_assert_error(&e, "/dev/full: cannot write: No space left on device");
}

/* A prompt's texts may be absent. A shard may have no record, no tokenizer and no template. */
static void empty_things(void **state) {
    (void)state;
    Error e;
    ShardWriter w;
    Shard s;
    Record r = {0};
    int32_t token = 5;
    const Record bare = {.tokens = &token, .count = 1};
    const char *path = files_path("bare.shard");
    assert_true(shard_create(&w, path, RECORD_PROMPT, 10, NULL, 0, NULL, &e));
    assert_true(shard_add(&w, &bare, &e) && shard_commit(&w, &e));
    assert_true(shard_open(&s, path, &e));
    assert_true(shard_record(&s, 0, &r, &e));
    assert_int_equal(r.count, 1);
    assert_int_equal(r.prompt, 1);
    assert_string_equal(r.text, "");
    assert_string_equal(r.fields, "");
    assert_int_equal(s.tokenizer_bytes, 0);
    assert_string_equal(s.chat_template, "");
    record_free(&r);
    shard_close(&s);
    assert_true(shard_create(&w, path, RECORD_STEP, 10, NULL, 0, NULL, &e) && shard_commit(&w, &e));
    assert_true(shard_open(&s, path, &e));
    assert_int_equal(s.count, 0);
    assert_int_equal(s.longest, 0);
    shard_close(&s);
    assert_string_equal(record_kind_name(RECORD_STEP), "step");
    assert_string_equal(record_kind_name(RECORD_UNPAIRED), "unpaired");
    assert_string_equal(record_kind_name((RecordKind)9), "unknown");
}

/* ---- files that are mapped ------------------------------------------------------------------------------------- */

/* An uncompressed file is mapped, and a byte of it that differs is found as in any other file. */
static void mapped(void **state) {
    (void)state;
    Error e;
    Shard s;
    size_t n;
    const char *path = files_path("mapped.shard");
    for (int k = 0; k < KINDS; k++) {
        put_shard(path, kinds[k], 300, 20);
        assert_shard(path, kinds[k], 300, 20);
        assert_true(shard_open(&s, path, &e));
        assert_non_null(s.map);
        assert_ptr_equal(s.payload, s.map->bytes + 1024 + 16 * 20);
        assert_int_equal(s.payload_hash, XXH3_64bits(s.payload, s.payload_bytes));
        shard_close(&s);
        uint8_t *file = files_get(path, &n);
        for (size_t at = 0; at < n; at += 7) {
            file[at] ^= 0x20;
            files_put(path, file, n);
            assert_false(open_path(path, &e));
            files_assert_error(&e, "mapped.shard: ");
            file[at] ^= 0x20;
        }
        free(file);
    }
    assert_null(*mapping_list());
    put_shard(files_path("packed.shard.zst"), RECORD_CHAT, 300, 3);
    assert_true(shard_open(&s, files_path("packed.shard.zst"), &e));
    assert_null(s.map);
    shard_close(&s);
}

/* Bytes of the mapping at `from` that are in memory. */
static size_t resident(const void *from) {
    const unsigned long at = (unsigned long)from;
    size_t in = 0;
    char line[256];
    unsigned long low, high, kilobytes;
    bool here = false;
    FILE *f = fopen("/proc/self/smaps", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx ", &low, &high) == 2) here = low <= at && at < high;
        if (here && sscanf(line, "Rss: %lu kB", &kilobytes) == 1) in = kilobytes * 1024;
    }
    fclose(f);
    return in;
}

/* Opening reads every page, but keeps none of the payload. */
static void pages_are_given_back(void **state) {
    (void)state;
    enum { COUNT = 400000 };
    Error e;
    Shard s;
    Record r = {0};
    const char *path = files_path("large.shard");
    put_shard(path, RECORD_CHAT, 300, COUNT);
    assert_true(shard_open(&s, path, &e));
    assert_true(s.payload_bytes > 8u << 20);
    const size_t index = (size_t)16 * COUNT;
    assert_true(resident(s.payload) < index + (2 << 20));
    assert_true(shard_record(&s, 12345, &r, &e));
    const Record x = sample(RECORD_CHAT, 300, 12345);
    assert_memory_equal(r.tokens, x.tokens, (size_t)x.count * 4);
    record_free(&r);
    shard_close(&s);
}

/* A file that is cut while it is in use ends the program with one line; one whose ids change gives an error. */
static void changed_while_mapped(void **state) {
    (void)state;
    Error e = {""};
    Shard s;
    Record r = {0};
    int ends[2], status;
    char line[400] = "";
    const char *path = files_path("changing.shard");
    put_shard(path, RECORD_CHAT, 300, 20000);
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    if (!child) {
        dup2(ends[1], STDERR_FILENO);
        program_start();
        if (!shard_open(&s, path, &e) || truncate(path, 4096)) _exit(9);
        shard_record(&s, 19999, &r, &e);
        _exit(8);
    }
    close(ends[1]);
    for (ssize_t got, at = 0; (got = read(ends[0], line + at, sizeof line - 1 - (size_t)at)) > 0;) at += got;
    close(ends[0]);
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_non_null(
        strstr(line, "changing.shard: the file has become shorter, or cannot be read, while it is in use\n"));

    put_shard(path, RECORD_CHAT, 300, 3);
    assert_true(shard_open(&s, path, &e));
    const int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "\xff\xff", 2, 1024 + 16 * 3), 2);
    assert_false(shard_record(&s, 0, &r, &e));
    files_assert_error(&e, "changing.shard: record 0 has changed since it was opened");
    assert_int_equal(pwrite(fd, "\xff\xff", 2, 1024 + 8), 2); /* bytes of record 0 */
    assert_false(shard_record(&s, 0, &r, &e));
    files_assert_error(&e, "changing.shard: record 0 ");
    close(fd);
    record_free(&r);
    shard_close(&s);
}

/* Files as one shard: the records of each, in their order. */
static void several_files(void **state) {
    (void)state;
    Error e;
    Shard s;
    Record r = {0};
    char *a = xstrdup(files_path("a.shard")), *b = xstrdup(files_path("b.shard.zst")),
         *c = xstrdup(files_path("c.shard"));
    put_shard(a, RECORD_PROMPT, 300, 4);
    put_shard(b, RECORD_PROMPT, 300, 7);
    put_shard(c, RECORD_PROMPT, 300, 1);
    assert_true(shard_open_all(&s, (const char *[]){a, b, c}, 3, false, &e));
    assert_int_equal(s.count, 12);
    assert_non_null(strstr(s.name, "a.shard and 2 more"));
    int64_t tokens = 0;
    for (int64_t i = 0; i < 12; i++) {
        const Record x = sample(RECORD_PROMPT, 300, (int)(i < 4 ? i : i < 11 ? i - 4 : 0));
        assert_true(shard_record(&s, i, &r, &e));
        assert_int_equal(r.count, x.count);
        assert_int_equal(shard_length(&s, i), x.count);
        assert_memory_equal(r.tokens, x.tokens, (size_t)x.count * 4);
        assert_string_equal(r.text, x.text);
        tokens += r.count;
    }
    assert_int_equal(tokens, s.total_tokens);
    assert_false(shard_record(&s, 12, &r, &e));
    shard_close(&s);
    record_free(&r);
    put_shard(c, RECORD_CHAT, 300, 1);
    assert_false(shard_open_all(&s, (const char *[]){a, b, c}, 3, false, &e));
    files_assert_error(&e, "c.shard: contains chat records, but ");
    put_shard(c, RECORD_PROMPT, 301, 1);
    assert_false(shard_open_all(&s, (const char *[]){a, c}, 2, false, &e));
    files_assert_error(&e, "c.shard: they were made with different tokenizers");
    put_shard(c, RECORD_PROMPT, 300, 0);
    assert_false(shard_open_all(&s, (const char *[]){a, c}, 2, false, &e));
    files_assert_error(&e, "c.shard: the shard is empty");
    ShardWriter w;
    assert_true(shard_create(&w, c, RECORD_PROMPT, 300, "tok\0blob", 8, "{any}", &e));
    const Record x = sample(RECORD_PROMPT, 300, 0);
    assert_true(shard_add(&w, &x, &e) && shard_commit(&w, &e));
    assert_false(shard_open_all(&s, (const char *[]){a, c}, 2, false, &e));
    files_assert_error(&e, "c.shard: they were made with different chat templates");
    free(a), free(b), free(c);
}

/* ---- llm.c's token shards ------------------------------------------------------------------------------------ */

/* Ids of 2 bytes in llm.c's header with nothing else; ids of 4 bytes with the header's other fields. */
static void token_shards(void **state) {
    (void)state;
    Error e;
    TokenShard t;
    size_t n;
    enum { COUNT = 100000 };
    static int32_t tokens[COUNT];
    const char *path = files_path("tokens.bin");
    const uint8_t headers[2][36] = {{0x88, 0xD8, 0x34, 0x01, 1, 0, 0, 0, 0xA0, 0x86, 1, 0},
                                    {0xA1, 0xD9, 0x34, 0x01, 7, 0, 0, 0, 0xA0, 0x86, 1, 0, 0x00, 0xF5, 1, 0, 0x2A, 0,
                                     0,    0,    0,    0,    0, 0, 8, 7, 6,    5,    4, 3, 2,    1,    0, 0, 0,    0}};
    const TokenMeaning meanings[] = {{0}, {128256, 42, 0x0102030405060708}};
    for (int wide = 0; wide < 2; wide++) {
        const size_t width = wide ? 4 : 2;
        for (int i = 0; i < COUNT; i++) tokens[i] = i * 31 % (wide ? 128256 : 65536);
        assert_true(tokens_write(path, tokens, COUNT, meanings[wide], &e));
        uint8_t *file = files_get(path, &n);
        assert_int_equal(n, 1024 + width * COUNT); /* llm.c checks the exact size */
        assert_memory_equal(file, headers[wide], sizeof headers[wide]);
        for (size_t i = sizeof headers[wide]; i < 1024; i++) assert_int_equal(file[i], 0);
        for (int i = 0; i < COUNT; i++) assert_memory_equal(file + 1024 + width * (size_t)i, &tokens[i], width);
        for (int way = 0; way < 3; way++) {
            if (way == 1) files_feed_stdin(file, n, 999);
            if (way == 2) assert_true(tokens_write(files_path("tokens.bin.zst"), tokens, COUNT, meanings[wide], &e));
            const bool ok = tokens_open(&t, way == 1 ? "-" : way ? files_path("tokens.bin.zst") : path, 0, &e);
            if (way == 1) files_restore(0);
            assert_true(ok && (t.map != NULL) == (way == 0));
            assert_int_equal(t.count, COUNT);
            assert_int_equal(t.highest, wide ? 128255 : 65535);
            assert_memory_equal(&t.meaning, &meanings[wide], sizeof t.meaning);
            for (int i = 0; i < COUNT; i++) assert_int_equal(token_at(&t, i), tokens[i]);
            tokens_close(&t);
        }
        free(file);
    }
    assert_false(tokens_open(&t, path, 50257, &e));
    files_assert_error(&e, "tokens.bin: token 1622 is 50282, expected below the vocabulary of 50257");
    assert_null(t.ids);
    assert_true(tokens_write(path, tokens, 0, meanings[0], &e));
    assert_true(tokens_open(&t, path, 1, &e));
    assert_int_equal(t.count, 0);
    tokens_close(&t);
    assert_false(tokens_write(path, tokens, (size_t)1 << 31, meanings[0], &e));
    files_assert_error(&e, "2147483648 tokens, expected at most 2147483647");
    assert_false(tokens_write("/dev/full", tokens, COUNT, meanings[0], &e));
    files_assert_error(&e, "/dev/full: cannot write: No space left on device");
}

static void token_shard_damage(void **state) {
    (void)state;
    Error e;
    TokenShard t;
    Reader r;
    int32_t file[256 + 5] = {20240520, 1, 10, [256] = 1, 2, 3, 4, 5};
    const char *path = files_path("cut.bin");
    for (size_t n = sizeof file; n-- > 0;) {
        files_put(path, file, n);
        assert_false(tokens_open(&t, path, 0, &e));
        files_assert_error(&e, n < 4      ? ", expected a token shard"
                               : n < 1024 ? "cut.bin: header: needs 1024 bytes"
                                          : "header (10 tokens) needs 1044");
        if (n % 53) continue;
        files_feed_stdin(file, n, 100);
        const bool ok = tokens_open(&t, "-", 0, &e);
        files_restore(0);
        assert_false(ok);
        files_assert_error(&e, "standard input: ");
    }
    static const struct {
        int field;
        int32_t value;
        const char *part;
    } wrong[] = {{0, 20240326, "this is a checkpoint, expected a token shard"},
                 {0, 20240801, "token shard of version 1, expected 7"},
                 {3, -1, "vocabulary is -1 and documents begin with token 0"},
                 {3, 3, "token 4 is 3, expected below the vocabulary of 3"},
                 {4, 9, NULL}, /* without a vocabulary, the other fields mean nothing */
                 {0, -1, "this is a file of an unknown kind, expected a token shard"},
                 {1, 2, "token shard of version 2, expected 1"},
                 {2, -1, "number of tokens is -1"},
                 {2, INT32_MAX, "file ends at byte 1044, header (2147483647 tokens) needs 4294968318"},
                 {2, 9, "file ends at byte 1044, header (9 tokens) needs 1042"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const int32_t kept = file[wrong[i].field];
        file[wrong[i].field] = wrong[i].value;
        assert_true(reader_memory(&r, file, sizeof file, &e));
        if (!wrong[i].part) {
            assert_true(tokens_read(&t, &r, 0, &e) && !t.meaning.start);
            tokens_close(&t);
            reader_close(&r);
            file[wrong[i].field] = kept;
            continue;
        }
        assert_false(tokens_read(&t, &r, 0, &e));
        reader_close(&r);
        files_assert_error(&e, wrong[i].part);
        files_feed_stdin(file, sizeof file, 1000);
        const bool ok = tokens_open(&t, "-", 0, &e);
        files_restore(0);
        assert_false(ok);
        files_assert_error(&e, "standard input: ");
        file[wrong[i].field] = kept;
    }
}

/* A token shard as records: every token but the first is a target once, in a record of its own document, and no record
 * is longer than the limit. */
static void text_as_records(void **state) {
    (void)state;
    Error e;
    enum { N = 5000, START = 7 };
    static int32_t tokens[N];
    const char *path = files_path("text.bin");
    for (int i = 0; i < N; i++)
        tokens[i] = i % 2000 < 900 && i * i % 61 == 0 ? START : 8 + i % 90; /* also START twice */
    for (int first = 0; first < 2; first++) {
        tokens[0] = first ? START : 9; /* also a file that begins within a document */
        assert_true(tokens_write(path, tokens, N, (TokenMeaning){.vocab = 100, .start = START}, &e));
        for (int32_t most = 2; most < 300; most = most * 3 / 2 + 1) {
            Shard s;
            Record r = {0};
            int64_t at = 0;
            assert_true(shard_open_all(&s, (const char *[]){path}, 1, true, &e));
            shard_split(&s, most, -1);
            assert_true(s.kind == RECORD_CHAT && s.vocab == 100 && s.total_tokens == N);
            for (int64_t i = 0; i < s.count; i++) {
                assert_true(shard_record(&s, i, &r, &e));
                assert_true(r.count >= 2 && r.count <= most && r.count <= s.longest);
                assert_int_equal(shard_length(&s, i), r.count);
                assert_memory_equal(r.tokens, tokens + at, (size_t)r.count * 4);
                for (int32_t k = 0; k < r.count; k++) {
                    assert_int_equal(r.mask[k], k > 0);
                    if (k && k < r.count - 1) assert_int_not_equal(r.tokens[k], START);
                }
                at += r.count - 1;
                if (r.count < most && at < N - 1) assert_int_equal(r.tokens[r.count - 1], START);
            }
            assert_int_equal(at, N - 1);
            record_free(&r);
            shard_close(&s);
        }
    }
}

/* ---- clusters -------------------------------------------------------------------------------------------------- */

/* Writes shards whose records are of these clusters; "" is none. */
static void put_clusters(const char *path, const char *const *names, int count) {
    Error e;
    ShardWriter w;
    json_t *all = clusters_new("group");
    assert_true(shard_create(&w, path, RECORD_PROMPT, 300, "tok\0blob", 8, "{user}\n", &e));
    for (int i = 0; i < count; i++) {
        const Record x = sample(RECORD_PROMPT, 300, i);
        assert_true(shard_add(&w, &x, &e));
        clusters_add(all, *names[i] ? names[i] : NULL);
    }
    shard_describe(&w, all);
    assert_true(shard_commit(&w, &e));
    json_decref(all);
}

/* A shard says which clusters its records are of; of several files these are joined, if all say so. */
static void clusters(void **state) {
    (void)state;
    Error e;
    Shard s;
    char *a = xstrdup(files_path("a.shard")), *b = xstrdup(files_path("b.shard")), *c = xstrdup(files_path("c.shard"));
    put_clusters(a, (const char *const[]){"x", "y", "x", ""}, 4);
    put_clusters(b, (const char *const[]){"z", "y", ""}, 3);
    put_shard(c, RECORD_PROMPT, 300, 2);
    assert_true(shard_open(&s, a, &e));
    assert_int_equal(s.count, 4);
    json_t *want = json_loads("{\"field\":\"group\",\"clusters\":[\"x\",\"y\"],\"without\":1}", 0, NULL);
    assert_true(json_equal(s.clusters, want));
    json_decref(want), shard_close(&s);
    assert_true(shard_open_all(&s, (const char *[]){a, b}, 2, false, &e));
    want = json_loads("{\"field\":\"group\",\"clusters\":[\"x\",\"y\",\"z\"],\"without\":2}", 0, NULL);
    assert_true(json_equal(s.clusters, want));
    json_decref(want), shard_close(&s);
    assert_true(shard_open_all(&s, (const char *[]){c, b}, 2, false, &e));
    assert_null(s.clusters);
    shard_close(&s);
    size_t n;
    uint8_t *file = files_get(a, &n);
    uint8_t *list = memmem(file, n, "{\"clusters\":", 12);
    assert_non_null(list);
    static const struct {
        const char *bytes, *part;
    } wrong[] = {{"[", "memory: the list of clusters is damaged"},
                 {"{\"clusterz\"", "memory: the list of clusters is damaged"},
                 {"{\"clusters\":{", "memory: the list of clusters is damaged"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        uint8_t *bad = xmalloc(n);
        memcpy(bad, file, n);
        memcpy(bad + (list - file), wrong[i].bytes, strlen(wrong[i].bytes));
        patch(bad, n, 0, MAGIC_RECORDS, 4);
        assert_false(open_memory(bad, n, &e));
        files_assert_error(&e, wrong[i].part);
        free(bad);
    }
    list[5] = 0; /* a NUL in the list */
    patch(file, n, 0, MAGIC_RECORDS, 4);
    assert_false(open_memory(file, n, &e));
    files_assert_error(&e, "memory: the list of clusters has no end");
    free(file), free(a), free(b), free(c);
}

/* What a lineage says about a cluster. */
static void lineages(void **state) {
    (void)state;
#define STAGE(parent, clusters) "{\"stage\":\"train_sft\",\"parent\":" parent clusters "}"
#define MADE_OF(list, without)  ",\"clusters\":{\"field\":\"cluster\",\"clusters\":[" list "],\"without\":" without "}"
    static const struct {
        const char *lineage;
        ClusterTrained was;
    } cases[] = {
        {"[]", CLUSTER_UNKNOWN},
        {"[" STAGE("null", MADE_OF("\"x\",\"y\"", "0")) "]", CLUSTER_TRAINED},
        {"[" STAGE("null", MADE_OF("\"y\"", "0")) "]", CLUSTER_HELD_OUT},
        {"[" STAGE("null", MADE_OF("\"y\"", "3")) "]", CLUSTER_UNKNOWN}, /* three records could be of it */
        {"[" STAGE("null", "") "]", CLUSTER_UNKNOWN},
        {"[" STAGE("\"00ab\"", MADE_OF("\"y\"", "0")) "]", CLUSTER_UNKNOWN}, /* the model before it is unknown */
        {"[" STAGE("\"00ab\"", MADE_OF("\"x\"", "0")) "]", CLUSTER_TRAINED},
        {"[" STAGE("null", MADE_OF("\"y\"", "0")) "," STAGE("\"00ab\"", MADE_OF("\"z\"", "0")) "]", CLUSTER_HELD_OUT},
        {"[" STAGE("null", MADE_OF("\"y\"", "0")) "," STAGE("\"00ab\"", "") "]", CLUSTER_UNKNOWN},
        {"[" STAGE("null", "") "," STAGE("\"00ab\"", MADE_OF("\"x\"", "0")) "]", CLUSTER_TRAINED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *lineage = json_loads(cases[i].lineage, 0, NULL);
        assert_non_null(lineage);
        assert_int_equal(clusters_trained(lineage, "x"), cases[i].was);
        json_decref(lineage);
    }
    assert_int_equal(clusters_trained(NULL, "x"), CLUSTER_UNKNOWN);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trips),
        cmocka_unit_test(reused_record),
        cmocka_unit_test(exact_bytes),
        cmocka_unit_test(truncated_everywhere),
        cmocka_unit_test(flipped_everywhere),
        cmocka_unit_test(wrong_fields),
        cmocka_unit_test(not_files),
        cmocka_unit_test(refused_records),
        cmocka_unit_test(empty_things),
        cmocka_unit_test(token_shards),
        cmocka_unit_test(token_shard_damage),
        cmocka_unit_test(mapped),
        cmocka_unit_test(pages_are_given_back),
        cmocka_unit_test(changed_while_mapped),
        cmocka_unit_test(several_files),
        cmocka_unit_test(clusters),
        cmocka_unit_test(lineages),
        cmocka_unit_test(text_as_records),
    };
    return cmocka_run_group_tests_name("shard", tests, files_setup, files_teardown);
}
