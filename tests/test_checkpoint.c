/* test_checkpoint.c - checkpoint.h: llm.c's format byte by byte, the trailer, pipes and zstd, damaged files. */
#include "../llmc/base/error.h"    /* Error, xcalloc */
#include "../llmc/base/half.h"     /* half_from_bf16, half_to_bf16 */
#include "../llmc/base/io.h"       /* XXH3_64bits, reader_memory, reader_open */
#include "../llmc/model/config.h"  /* ModelConfig, gpt2_config */
#include "../llmc/model/tensors.h" /* gpt2_file_elements */
#include "files.h"                 /* files_path, files_assert_error, files_put, files_restore, ... */

#include "../llmc/model/checkpoint.h" /* checkpoint_open, CheckpointReader, checkpoint_section, ... */

/* L = 1, H = 1, C = 2, V = 3, Vp = 4, T = 2:
 *
 * 8 + 4 + 2 + 2 + 12 + 6 + 4 + 2 + 2 + 2 + 16 + 8 + 16 + 2 + 2 + 2 weights */
enum { WEIGHTS = 90, PLAIN_BYTES = 1024 + 4 * WEIGHTS, HALF_BYTES = 1024 + 2 * WEIGHTS };

static const uint8_t header_float32[32] = {0xC6, 0xD7, 0x34, 0x01, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0,
                                           1,    0,    0,    0,    1, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0};

static ModelConfig tiny(void) {
    ModelConfig c = gpt2_config(1, 1, 2, 3, 2);
    c.padded_vocab = 4;
    return c;
}

/* Values that bf16 represents exactly, so that one set of expected values serves both versions. */
static float weight(int i) { return (float)(i - 40) * 0.25f; }

/* Writes a file in llm.c's format by hand. */
static size_t plain_file(uint8_t file[PLAIN_BYTES], bool bf16) {
    memset(file, 0, PLAIN_BYTES);
    memcpy(file, header_float32, sizeof header_float32);
    if (bf16) file[4] = 5;
    for (int i = 0; i < WEIGHTS; i++) {
        const float w = weight(i);
        memcpy(file + 1024 + (bf16 ? 2 : 4) * i, (const uint8_t *)&w + (bf16 ? 2 : 0), bf16 ? 2 : 4);
    }
    return bf16 ? HALF_BYTES : PLAIN_BYTES;
}

/* Reads the whole checkpoint in c->in and closes it. The tags that were read are stored in `tags`. */
static bool drain_open(CheckpointReader *c, char *tags, Error *e) {
    char tag[5];
    uint64_t bytes;
    bool ok = checkpoint_start(c, e);
    if (ok) {
        const size_t n = gpt2_file_elements(&c->config);
        assert_true(n < 1 << 20);
        float *weights = malloc(n * sizeof *weights);
        ok = checkpoint_weights(c, weights, n / 3, "first third", e) &&
             checkpoint_weights(c, weights, n - n / 3, "rest", e);
        free(weights);
    }
    *tags = 0;
    while (ok && (ok = checkpoint_section(c, tag, &bytes, e)) && *tag) {
        if (strlen(tags) < 40) strcat(tags, tag);
        void *blob = checkpoint_blob(c, 1 << 20, NULL, tag, e);
        ok = blob != NULL;
        free(blob);
    }
    checkpoint_close(c);
    return ok;
}

static bool drain_memory(const void *file, size_t n, Error *e) {
    CheckpointReader c;
    char tags[64];
    return reader_memory(&c.in, file, n, e) && drain_open(&c, tags, e);
}

static bool drain_path(const char *path, Error *e) {
    CheckpointReader c;
    char tags[64];
    return reader_open(&c.in, path, e) && drain_open(&c, tags, e);
}

static void put_full(CheckpointWriter *w, const char *path, bool bf16) {
    Error e;
    float weights[WEIGHTS], head[3] = {0.5f, -1, 2};
    ModelConfig config = tiny();
    config.value_head = 1;
    for (int i = 0; i < WEIGHTS; i++) weights[i] = weight(i);
    bool ok = checkpoint_create(w, path, &config, bf16, &e) && checkpoint_put_weights(w, weights, 8, &e) &&
              checkpoint_put_weights(w, weights + 8, WEIGHTS - 8, &e) &&
              checkpoint_put_section(w, "CHAT", "{user}\n", 7, &e) &&
              checkpoint_put_section(w, "HEAD", head, sizeof head, &e) && checkpoint_begin_section(w, "TOKN", 10, &e) &&
              checkpoint_put(w, "01234", 5, &e) && checkpoint_put(w, "56789", 5, &e) &&
              checkpoint_put_section(w, "XYZ!", "unknown", 7, &e) && checkpoint_put_section(w, "LINE", "", 0, &e);
    if (!ok) fail_msg("%s", e.text);
}

/* A file with a trailer: CHAT, HEAD, TOKN, XYZ!, LINE. The result is malloc'ed. */
static uint8_t *full_file(const char *name, bool bf16, size_t *n) {
    CheckpointWriter w;
    Error e;
    put_full(&w, files_path(name), bf16);
    assert_true(checkpoint_commit(&w, &e));
    return files_get(files_path(name), n);
}

/* Writes the right checksum at the end of a file that a test has changed. */
static void seal(uint8_t *file, size_t n) {
    const uint64_t hash = XXH3_64bits(file, n - 8);
    memcpy(file + n - 8, &hash, 8);
}

/* ---- rounding ------------------------------------------------------------------------------------------------ */

static void bf16_known(void **state) {
    (void)state;
    static const struct {
        uint32_t in;
        uint16_t out;
    } known[] = {
        {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x3f800000, 0x3f80},
        {0xc0200000, 0xc020}, {0x3f808000, 0x3f80},                       /* halfway: to the even one below */
        {0x3f818000, 0x3f82},                                             /* halfway: to the even one above */
        {0x3f808001, 0x3f81}, {0x3f807fff, 0x3f80}, {0x3fffffff, 0x4000}, /* a carry into the exponent */
        {0x7f7fffff, 0x7f80},                                             /* the largest float32 becomes infinite */
        {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fc0},
        {0xffc12345, 0xffc1}, {0x00012345, 0x0001}, {0x00008000, 0x0000},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        float x;
        memcpy(&x, &known[i].in, 4);
        assert_int_equal(half_to_bf16(x), known[i].out);
    }
}

static void bf16_nearest(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        const float x = half_from_bf16((uint16_t)h);
        if (x != x) assert_true(half_from_bf16(half_to_bf16(x)) != half_from_bf16(half_to_bf16(x)));
        else assert_int_equal(half_to_bf16(x), h);
    }
    uint32_t bits = 1;
    for (int i = 0; i < 200000; i++) {
        float x;
        bits = bits * 1664525 + 1013904223;
        memcpy(&x, &bits, 4);
        const uint16_t h = half_to_bf16(x);
        if (!isfinite(x) || (h & 0x7fff) >= 0x7f7f || !(h & 0x7fff)) continue;
        const double gap = fabs((double)x - half_from_bf16(h));
        const double up = fabs((double)x - half_from_bf16((uint16_t)(h + 1)));
        const double down = fabs((double)x - half_from_bf16((uint16_t)(h - 1)));
        assert_true(gap < up || (gap == up && !(h & 1)));
        assert_true(gap < down || (gap == down && !(h & 1)));
    }
}

/* ---- valid files --------------------------------------------------------------------------------------------- */

static void assert_plain(const char *path, bool bf16) {
    CheckpointReader c;
    Error e;
    float weights[WEIGHTS];
    char tag[5] = "????";
    uint64_t bytes;
    if (!checkpoint_open(&c, path, &e)) fail_msg("%s", e.text);
    const ModelConfig expected = tiny();
    assert_memory_equal(&c.config, &expected, sizeof expected);
    assert_int_equal(c.bf16, bf16);
    assert_true(checkpoint_weights(&c, weights, WEIGHTS, "parameters", &e));
    for (int i = 0; i < WEIGHTS; i++) assert_true(weights[i] == weight(i));
    for (int again = 0; again < 2; again++) {
        assert_true(checkpoint_section(&c, tag, &bytes, &e));
        assert_string_equal(tag, "");
        assert_int_equal(bytes, 0);
    }
    checkpoint_close(&c);
}

static void llmc_files(void **state) {
    (void)state;
    uint8_t file[PLAIN_BYTES];
    for (int bf16 = 0; bf16 < 2; bf16++) {
        size_t packed_bytes;
        const size_t n = plain_file(file, bf16);
        uint8_t *packed = files_zstd(file, n, &packed_bytes);
        files_put(files_path("llmc.bin"), file, n);
        assert_plain(files_path("llmc.bin"), bf16);
        files_put(files_path("llmc.bin.zst"), packed, packed_bytes);
        assert_plain(files_path("llmc.bin.zst"), bf16);
        files_feed_stdin(file, n, 100);
        assert_plain("-", bf16);
        files_restore(0);
        files_feed_stdin(packed, packed_bytes, 10);
        assert_plain("-", bf16);
        files_restore(0);
        free(packed);
    }
}

/* The written file, byte for byte: llm.c's part, then the trailer. */
static void exact_bytes(void **state) {
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        size_t n;
        uint8_t expected[PLAIN_BYTES], *file = full_file("exact.bin", bf16, &n);
        const size_t plain = plain_file(expected, bf16);
        static const uint8_t trailer[] = "LLMCTAIL\1\0\0\0"
                                         "CHAT\0\0\0\0\7\0\0\0\0\0\0\0{user}\n"
                                         "HEAD\0\0\0\0\14\0\0\0\0\0\0\0\0\0\0\x3f\0\0\x80\xbf\0\0\0\x40"
                                         "TOKN\0\0\0\0\12\0\0\0\0\0\0\0"
                                         "0123456789"
                                         "XYZ!\0\0\0\0\7\0\0\0\0\0\0\0unknown"
                                         "LINE\0\0\0\0\0\0\0\0\0\0\0\0"
                                         "SUM \0\0\0\0\10\0\0\0\0\0\0\0";
        expected[8 * 4] = 1;
        expected[14 * 4] = 1; /* a trailer follows, with a value head: llm.c ignores both */
        assert_int_equal(n, plain + sizeof trailer - 1 + 8);
        assert_memory_equal(file, expected, plain);
        assert_memory_equal(file + plain, trailer, sizeof trailer - 1);
        const uint64_t hash = XXH3_64bits(file, n - 8);
        assert_memory_equal(file + n - 8, &hash, 8);
        free(file);
    }
}

static void assert_full(const char *path) {
    CheckpointReader c;
    Error e;
    float weights[WEIGHTS], head[3];
    char tag[5], text[16];
    uint64_t bytes;
    size_t n;
    if (!checkpoint_open(&c, path, &e)) fail_msg("%s", e.text);
    assert_int_equal(c.config.value_head, 1);
    assert_true(checkpoint_weights(&c, weights, WEIGHTS, "parameters", &e));
    for (int i = 0; i < WEIGHTS; i++) assert_true(weights[i] == weight(i));
    assert_true(checkpoint_section(&c, tag, &bytes, &e)); /* CHAT is skipped whole */
    assert_string_equal(tag, "CHAT");
    assert_int_equal(bytes, 7);
    assert_true(checkpoint_section(&c, tag, &bytes, &e));
    assert_string_equal(tag, "HEAD");
    assert_int_equal(bytes, 12);
    assert_true(checkpoint_payload(&c, head, 8, "valuew", &e) && checkpoint_payload(&c, head + 2, 4, "valueb", &e));
    assert_true(head[0] == 0.5f && head[1] == -1 && head[2] == 2);
    assert_false(checkpoint_payload(&c, head, 1, "more", &e));
    files_assert_error(&e, "more: needs 1 bytes at byte");
    assert_true(checkpoint_section(&c, tag, &bytes, &e));
    assert_string_equal(tag, "TOKN");
    assert_true(checkpoint_payload(&c, text, 3, "a part", &e)); /* the remaining bytes are skipped */
    assert_memory_equal(text, "012", 3);
    assert_null(checkpoint_blob(&c, 6, &n, "tokenizer", &e));
    files_assert_error(&e, "tokenizer: has 7 bytes, the maximum is 6");
    assert_true(checkpoint_section(&c, tag, &bytes, &e));
    assert_string_equal(tag, "XYZ!");
    char *blob = checkpoint_blob(&c, 7, &n, "unknown", &e);
    assert_non_null(blob);
    assert_string_equal(blob, "unknown");
    assert_int_equal(n, 7);
    free(blob);
    assert_true(checkpoint_section(&c, tag, &bytes, &e));
    assert_string_equal(tag, "LINE");
    assert_int_equal(bytes, 0);
    assert_true(checkpoint_section(&c, tag, &bytes, &e));
    assert_string_equal(tag, "");
    assert_true(checkpoint_finish(&c, &e)); /* the same a second time */
    checkpoint_close(&c);
}

static void round_trips(void **state) {
    (void)state;
    Error e;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        size_t n;
        CheckpointWriter w;
        uint8_t *file = full_file("trip.bin", bf16, &n);
        assert_full(files_path("trip.bin"));
        put_full(&w, files_path("trip.bin.zst"), bf16);
        assert_true(checkpoint_commit(&w, &e));
        assert_full(files_path("trip.bin.zst"));
        files_catch_stdout(files_path("caught.bin"));
        put_full(&w, "-", bf16);
        const bool ok = checkpoint_commit(&w, &e);
        files_restore(1);
        assert_true(ok);
        files_assert_content(files_path("caught.bin"), file, n);
        files_feed_stdin(file, n, 77);
        assert_full("-");
        files_restore(0);
        free(file);
    }
}

static void only_a_section(void **state) {
    (void)state;
    Error e;
    CheckpointReader c;
    char tag[5];
    uint64_t bytes;
    size_t n;
    free(full_file("skip.bin", true, &n));
    assert_true(checkpoint_open(&c, files_path("skip.bin"), &e));
    assert_true(checkpoint_section(&c, tag, &bytes, &e)); /* the weights are skipped */
    assert_string_equal(tag, "CHAT");
    assert_true(checkpoint_finish(&c, &e));
    checkpoint_close(&c);
}

static void other_shapes(void **state) {
    (void)state;
    Error e;
    CheckpointWriter w;
    CheckpointReader c;
    ModelConfig config = gpt2_config(2, 4, 8, 300, 16);
    config.kv_heads = 2;
    config.hidden = 20;
    config.head_size = 3;
    config.tied = 0;
    const size_t n = gpt2_file_elements(&config);
    /* wte, wpe; per layer: two layernorms, qkv (4 * 3 + 2 * 2 * 3 rows), attproj (12 columns), fc, fcproj; the last
     * layernorm; the output matrix */
    assert_int_equal(n, 384 * 8 + 16 * 8 + 2 * (32 + 24 * 9 + 8 * 13 + 20 * 9 + 8 * 21) + 16 + 384 * 8);
    float *weights = xcalloc(n, sizeof *weights);
    assert_true(checkpoint_create(&w, files_path("other.bin"), &config, false, &e));
    assert_true(checkpoint_put_weights(&w, weights, n, &e));
    assert_true(checkpoint_commit(&w, &e));
    assert_true(checkpoint_open(&c, files_path("other.bin"), &e));
    assert_memory_equal(&c.config, &config, sizeof config);
    assert_true(checkpoint_finish(&c, &e));
    checkpoint_close(&c);
    free(weights);
}

/* ---- invalid files ------------------------------------------------------------------------------------------- */

static void short_message(void **state) {
    (void)state;
    Error e;
    CheckpointReader c;
    int32_t header[256] = {20240326, 3, 1024, 50257, 12, 12, 768, 50304};
    const char *path = files_path("broken.bin");
    files_put(path, header, sizeof header);
    assert_int_equal(truncate(path, 1048576), 0);
    assert_false(checkpoint_open(&c, path, &e));
    files_assert_error(
        &e, "broken.bin: parameter data ends at byte 1048576, header (12 layers, 768 channels) needs 497904640");
    header[1] = 5;
    files_put(path, header, sizeof header);
    assert_false(checkpoint_open(&c, path, &e));
    files_assert_error(&e, "parameter data ends at byte 1024, header (12 layers, 768 channels) needs 248952832");

    float weights[100];
    files_feed_stdin(header, sizeof header, 1024); /* the end of a pipe is only known when it is reached */
    const bool opened = checkpoint_open(&c, "-", &e), read = opened && checkpoint_weights(&c, weights, 100, "wte", &e);
    files_restore(0);
    assert_true(opened);
    checkpoint_close(&c);
    assert_false(read);
    files_assert_error(&e, "standard input: parameter data ends at byte 1024 in wte, header (12 layers, 768 channels) "
                           "needs 248952832");
}

static void assert_refused(const void *file, size_t n, const char *part) {
    Error e = {""}, piped = {""};
    assert_false(drain_memory(file, n, &e));
    files_assert_error(&e, part);
    files_feed_stdin(file, n, 512);
    const bool ok = drain_path("-", &piped);
    files_restore(0);
    assert_false(ok);
    files_assert_error(&piped, "standard input: ");
}

static void wrong_headers(void **state) {
    (void)state;
    Error e;
    uint8_t file[PLAIN_BYTES];
    static const struct {
        int field;
        int32_t value;
        const char *part;
    } wrong[] = {
        {0, 20240520, "memory: this is a token shard, expected a checkpoint"},
        {0, 20261124, "memory: this is a record shard, expected a checkpoint"},
        {0, 20240801, "memory: this is a token shard, expected a checkpoint"},
        {0, 0x04034b50,
         "memory: this is a zip archive (or a PyTorch, NumPy or Excel file); unpack or convert it first, expected a checkpoint"},
        {1, 1, "memory: checkpoint of version 1, expected 3 (float32) or 5 (bf16)"},
        {1, 4, "version 4"},
        {2, 0, "context length is 0"},
        {2, -5, "context length is -5"},
        {2, INT32_MAX, "context length is 2147483647"},
        {3, 0, "vocabulary is 0"},
        {3, INT32_MIN, "vocabulary is -2147483648"},
        {3, 5, "padded vocabulary is 4, expected 5 to"},
        {4, 0, "layers is 0"},
        {4, INT32_MAX, "layers is 2147483647"},
        {4, 1024, "memory: parameter data ends at byte 1384, header (1024 layers, 2 channels) needs"},
        {5, 0, "heads is 0"},
        {5, -1, "heads is -1"},
        {5, 3, "width 2 is not a multiple of 3 heads"},
        {6, 0, "width is 0"},
        {6, INT32_MAX, "width is 2147483647"},
        {6, 1 << 30, "width is 1073741824"},
        {6, 1 << 16, "heads of 65536 channels"},
        {7, INT32_MAX, "padded vocabulary is 2147483647"},
        {7, 1 << 22, "parameter data ends at byte 1384"},
        {8, 2, "trailer of version 2, expected 1"},
        {8, 1, "file ends at byte 1384 after the parameters, but its header declares a trailer"},
        {9, 2, "key/value heads is 2"},
        {9, -1, "key/value heads is -1"},
        {10, -8, "hidden width is -8"},
        {10, INT32_MAX, "hidden width is 2147483647"},
        {11, 1, "norm is 1"},
        {12, -1, "position is"},
        {13, 7, "mlp is 7"},
        {14, 2, "value head is 2"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        plain_file(file, false);
        memcpy(file + 4 * wrong[i].field, &wrong[i].value, 4);
        assert_false(drain_memory(file, PLAIN_BYTES, &e));
        files_assert_error(&e, wrong[i].part);
    }
    /* the largest model that a header can describe: no product overflows, nothing is allocated */
    const int32_t most[8] = {20240326, 3, 1 << 20, (1 << 22) - 128, 1024, 1024, 1 << 16, 1 << 22};
    plain_file(file, false);
    memcpy(file, most, sizeof most);
    assert_false(drain_memory(file, PLAIN_BYTES, &e));
    files_assert_error(&e, "header (1024 layers, 65536 channels) needs 212");
    files_feed_stdin(file, PLAIN_BYTES, 512);
    CheckpointReader c;
    const bool opened = checkpoint_open(&c, "-", &e), finished = opened && checkpoint_finish(&c, &e);
    files_restore(0);
    assert_true(opened);
    assert_false(finished);
    checkpoint_close(&c);
    files_assert_error(&e, "parameter data ends at byte 1384");
}

static void wrong_trailers(void **state) {
    (void)state;
    Error e;
    size_t n;
    const size_t tail = PLAIN_BYTES, chat = tail + 12, head = chat + 16 + 7;
    uint8_t *file = full_file("trailer.bin", false, &n), *copy = malloc(n + 8);
    memcpy(copy, file, n);
    copy[n] = 0;
    assert_refused(copy, n + 1, "more data follows byte");
    copy[tail] = 'X';
    assert_refused(copy, n, "unknown data after the parameters at byte 1384, expected a trailer or the end");
    memcpy(copy, file, n);
    copy[tail + 8] = 2;
    assert_refused(copy, n, "trailer of version 2, expected 1");
    memcpy(copy, file, n);
    copy[chat] = '\n';
    assert_refused(copy, n, "no section begins at byte 1396, expected one");
    memcpy(copy, file, n);
    copy[chat + 4] = 1;
    assert_refused(copy, n, "no section begins at byte 1396");
    memcpy(copy, file, n);
    memset(copy + chat + 8, 0xff, 8);
    assert_refused(copy, n, "section CHAT needs 18446744073709551615 bytes at byte 1412, the file ends at");
    memcpy(copy, file, n);
    copy[head + 8] = 16;
    assert_refused(copy, n, "section HEAD has 16 bytes, expected 12");
    memcpy(copy, file, n);
    copy[n - 16] = 7;
    assert_refused(copy, n, "section SUM  has 7 bytes, expected 8");
    memcpy(copy, file, n);
    memcpy(copy + head, "HEAR", 4);
    seal(copy, n);
    assert_refused(copy, n, "header declares a value head, but the trailer has none");
    memcpy(copy, file, n);
    copy[14 * 4] = 0; /* a HEAD section alone sets value_head */
    copy[8 * 4] = 0;  /* and a trailer that the header does not announce is found */
    seal(copy, n);
    CheckpointReader c;
    assert_true(reader_memory(&c.in, copy, n, &e) && checkpoint_start(&c, &e));
    assert_int_equal(c.config.value_head, 0);
    assert_true(checkpoint_finish(&c, &e));
    assert_int_equal(c.config.value_head, 1);
    checkpoint_close(&c);
    free(file), free(copy);
}

static void truncated_everywhere(void **state) {
    (void)state;
    Error e;
    for (int kind = 0; kind < 6; kind++) { /* float32 and bf16; llm.c's file, ours, and ours with zstd */
        size_t n;
        uint8_t *file;
        if (kind < 2) {
            file = malloc(PLAIN_BYTES);
            n = plain_file(file, kind);
        } else file = full_file("whole.bin", kind % 2, &n);
        if (kind >= 4) {
            uint8_t *packed = files_zstd(file, n, &n);
            free(file);
            file = packed;
        }
        const char *path = files_path("cut.bin");
        assert_true(drain_memory(file, n, &e));
        files_put(path, file, n);
        for (size_t cut = n; cut-- > 0;) {
            assert_int_equal(truncate(path, (off_t)cut), 0);
            e.text[0] = 0;
            assert_false(drain_path(path, &e));
            files_assert_error(&e, "cut.bin: ");
            assert_false(drain_memory(file, cut, NULL));
            if (cut % 61 == 0) assert_refused(file, cut, "memory: ");
        }
        free(file);
    }
}

static void flipped_everywhere(void **state) {
    (void)state;
    Error e;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        size_t n;
        uint8_t *file = full_file("flip.bin", bf16, &n);
        for (size_t at = 0; at < n; at++)
            for (int bit = 0; bit < 8; bit++) {
                file[at] ^= (uint8_t)(1 << bit);
                e.text[0] = 0;
                if (drain_memory(file, n, &e)) fail_msg("bit %d of byte %zu", bit, at);
                files_assert_error(&e, "memory: ");
                file[at] ^= (uint8_t)(1 << bit);
            }
        free(file);
    }
    uint8_t plain[PLAIN_BYTES]; /* llm.c's format has no checksum, so the only requirement is that nothing crashes */
    plain_file(plain, false);
    for (size_t at = 0; at < 1024 * 8; at++) {
        plain[at / 8] ^= (uint8_t)(1 << at % 8);
        if (!drain_memory(plain, PLAIN_BYTES, &e)) files_assert_error(&e, "memory: ");
        plain[at / 8] ^= (uint8_t)(1 << at % 8);
    }
}

static void not_files(void **state) {
    (void)state;
    Error e;
    CheckpointReader c;
    assert_false(checkpoint_open(&c, files_path("absent.bin"), &e));
    files_assert_error(&e, "absent.bin: cannot open: No such file or directory");
    assert_false(checkpoint_open(&c, files_directory, &e));
    files_assert_error(&e, "is a directory, expected a file");
    files_put(files_path("empty.bin"), "", 0);
    assert_false(checkpoint_open(&c, files_path("empty.bin"), &e));
    files_assert_error(&e, "empty.bin: this is an empty file, expected a checkpoint");
    assert_false(checkpoint_open(&c, "/dev/null", &e));
    files_assert_error(&e, "/dev/null: this is an empty file, expected a checkpoint");
}

static void failed_writes(void **state) {
    (void)state;
    Error e = {""};
    CheckpointWriter w;
    const char *path = files_path("kept.bin");
    files_put(path, "earlier", 7);
    const int files = files_count();
    put_full(&w, path, false);
    checkpoint_abort(&w);
    assert_int_equal(files_count(), files);
    files_assert_content(path, "earlier", 7);
    put_full(&w, "/dev/full", false); /* still in the buffer */
    assert_false(checkpoint_commit(&w, &e));
    files_assert_error(&e, "/dev/full: cannot write: No space left on device");
    checkpoint_abort(&w);
    ModelConfig config = tiny();
    assert_false(checkpoint_create(&w, files_path("absent/x.bin"), &config, false, &e));
    files_assert_error(&e, "absent/x.bin: cannot create a temporary file in its directory: No such file or directory");
    config.head_size = 0; /* as gpt2_config() sets it */
    config.heads = 7;
    config.kv_heads = 7;
    assert_false(checkpoint_create(&w, path, &config, false, &e));
    files_assert_error(&e, "kept.bin: width 2 is not a multiple of 7 heads");
    files_assert_content(path, "earlier", 7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_known),     cmocka_unit_test(bf16_nearest),         cmocka_unit_test(llmc_files),
        cmocka_unit_test(exact_bytes),    cmocka_unit_test(round_trips),          cmocka_unit_test(only_a_section),
        cmocka_unit_test(other_shapes),   cmocka_unit_test(short_message),        cmocka_unit_test(wrong_headers),
        cmocka_unit_test(wrong_trailers), cmocka_unit_test(truncated_everywhere), cmocka_unit_test(flipped_everywhere),
        cmocka_unit_test(not_files),      cmocka_unit_test(failed_writes),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, files_setup, files_teardown);
}
