/* fuzz_shard.c - libFuzzer target: arbitrary bytes as a record shard, unchanged and with a corrected checksum, and as a
 * token shard.
 *
 *     clang -g -O1 -std=c11 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined tests/fuzz_shard.c -lzstd -lm
 *     ./a.out -max_len=4096 corpus/ tests/corpus/shard/
 */
#include "../llmc/base/error.h"     /* Error */
#include "../llmc/base/io.h"        /* Reader, reader_close, reader_memory */
#include "../llmc/records/shard.h"  /* RECORD_UNPAIRED, RECORD_CHAT, RECORD_STEP, Record, ... */
#include "../llmc/records/tokens.h" /* TokenShard, token_raw, tokens_close, tokens_read */
#include "fuzz.h"                   /* require, require_error, fuzz_sealed */

/* A shard that opens must return all its records, each within its bounds, and must be the same when written again. */
static void read_records(const uint8_t *data, size_t n) {
    Reader in;
    Shard s;
    Error e = {""};
    if (!reader_memory(&in, data, n, &e)) return require_error(&e);
    const bool ok = shard_read(&s, &in, &e);
    reader_close(&in);
    if (!ok) return require_error(&e);
    Record r = {0};
    ShardWriter w;
    int64_t total = 0;
    require(shard_create(&w, "/dev/null", s.kind, s.vocab, s.tokenizer, s.tokenizer_bytes, s.chat_template, &e));
    for (int64_t i = 0; i < s.count; i++) {
        require(shard_record(&s, i, &r, &e) && r.count >= 1 && r.count <= s.longest);
        for (int32_t k = 0; k < r.count; k++) require(r.tokens[k] >= 0 && r.tokens[k] < s.vocab);
        require((r.mask != NULL) == (s.kind == RECORD_CHAT || s.kind == RECORD_STEP));
        require((r.length != NULL) == (s.kind == RECORD_PREFERENCE) && (r.completions > 1) == (r.length != NULL));
        int64_t parts = (int64_t)r.prompt + r.gold;
        for (int32_t k = 0; k < r.completions; k++) {
            require(r.length[k] >= 1);
            parts += r.length[k];
        }
        require(r.prompt >= 0 && r.gold >= 0 && parts <= r.count && (!r.length || parts == r.count));
        require(r.label == 0 || (r.label == 1 && s.kind == RECORD_UNPAIRED));
        require(s.kind != RECORD_UNPAIRED || r.prompt < r.count);
        total += r.count;
        require(shard_add(&w, &r, &e));
    }
    require(total == s.total_tokens && w.payload_bytes == s.payload_bytes);
    if (s.payload_bytes) require(!memcmp(w.payload, s.payload, s.payload_bytes));
    if (s.clusters) shard_describe(&w, s.clusters);
    shard_abort(&w);
    record_free(&r);
    shard_close(&s);
}

static void read_tokens(const uint8_t *data, size_t n) {
    Reader in;
    TokenShard t;
    Error e = {""};
    if (!reader_memory(&in, data, n, &e)) return;
    if (!tokens_read(&t, &in, 1000, &e)) require_error(&e);
    for (int64_t i = 0; i < t.count; i++) require(token_raw(&t, i) < 1000);
    tokens_close(&t);
    reader_close(&in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    read_tokens(data, n);
    read_records(data, n);
    if (n <= 1024) return 0;
    uint8_t *sealed = fuzz_sealed(data, n);
    read_records(sealed, n);
    free(sealed);
    return 0;
}
