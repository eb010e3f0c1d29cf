/* shards.h - fixtures for tests of data/make_shard: its refusals, and the records of what it writes as text. */
#ifndef TESTS_SHARDS_H
#define TESTS_SHARDS_H

#include "../llmc/base/error.h"     /* Error */
#include "../llmc/base/text.h"      /* text_string, TextBuffer, text_format, text_free */
#include "../llmc/records/shard.h"  /* Shard, RECORD_PREFERENCE, RECORD_STEP, Record, ... */
#include "../llmc/text/tokenizer.h" /* Tokenizer, tokenizer_decode, tokenizer_free, tokenizer_load */
#include "files.h"                  /* files_path */
#include "shell.h"                  /* refused_output */

/* Runs a command that must fail with one line that contains `part` and leave $T/x.shard unchanged. */
static inline void refused(int status, const char *command, const char *part) {
    refused_output("x.shard", status, command, part);
}

/* Opens $T/NAME, which must have this kind and number of records. */
static inline Shard open_shard(const char *name, RecordKind kind, int64_t count) {
    Error e;
    Shard s;
    if (!shard_open(&s, files_path(name), &e)) fail_msg("%s", e.text);
    assert_int_equal(s.kind, kind);
    assert_int_equal(s.count, count);
    return s;
}

/* Record i as text. | precedes each completion and the gold answer of a preference. Trained tokens (chat) or the last token
 * of a step (step) are enclosed in [ and ]. */
static inline void assert_record(const Shard *s, int64_t i, const char *want) {
    Error e;
    Record r = {0};
    Tokenizer t;
    TextBuffer text = {0};
    assert_true(tokenizer_load(&t, s->tokenizer, s->tokenizer_bytes, &e));
    if (!shard_record(s, i, &r, &e)) fail_msg("%s", e.text);
    for (int32_t k = 0, part = 0, end = r.prompt; k < r.count; k++) {
        const int mark = r.mask ? r.mask[k] : 0, before = k && r.mask ? r.mask[k - 1] : 0,
                  after = k + 1 < r.count && r.mask ? r.mask[k + 1] : 0;
        if (s->kind == RECORD_PREFERENCE && k == end) {
            text_string(&text, "|");
            end += part < r.completions ? r.length[part] : r.gold;
            part++;
        }
        if (mark && before != mark) text_string(&text, "[");
        tokenizer_decode(&t, &r.tokens[k], 1, true, &text);
        if (mark && after != mark) text_format(&text, s->kind == RECORD_STEP ? "]%d" : "]", mark - 1);
    }
    assert_string_equal(text.text, want);
    text_free(&text);
    record_free(&r);
    tokenizer_free(&t);
}

#endif
