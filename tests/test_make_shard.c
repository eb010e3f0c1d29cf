/* test_make_shard.c - make_shard with several threads: the same bytes, counts and messages as with one, for every kind
 * of row, with invalid rows among them.
 *
 * Needs ./data/make_shard. */
#include "../llmc/base/text.h" /* text_string, TextBuffer, text_format, text_free */
#include "files.h"             /* files_path, files_directory, files_get, files_setup, ... */
#include "shell.h"             /* said, put, run, assert_holds, ... */

enum { ROWS = 1500 }; /* more than 65536 bytes, below which one thread converts a batch */

static int setup(void **state) { return files_setup(state) || setenv("T", files_directory, 1); }

static int teardown(void **state) {
    free(said), free(out);
    return files_teardown(state);
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

static void chat(TextBuffer *b, int i) {
    if (i % 97 == 50) text_string(b, "{\"messages\":[{\"role\":\"user\"}]}");
    else if (i % 101 == 70) text_string(b, "{\"messages\":[}");
    else if (i % 103 == 80) text_string(b, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xFF\"}]}");
    else if (i % 107 == 90) text_string(b, "{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"r\"}");
    else if (i % 11 == 5) text_string(b, " ");
    else
        text_format(
            b,
            "{\"messages\":[{\"role\":\"user\",\"content\":\"What is %d%s?\"},{\"role\":\"assistant\","
            "\"thinking\":\"So\",\"content\":\"It is %*d.\"},{\"role\":\"user\",\"content\":\"And\"},{\"role\":\"assistant\","
            "\"thinking\":\"Hm\",\"content\":\"%s\",\"field_%d\":1}],\"id\":%d}",
            i, i % 13 ? "" : "<|im_end|>", i % 60, i, i % 17 ? "so" : "", i % 90, i);
}

static void preference(TextBuffer *b, int i) {
    if (i % 97 == 50) text_string(b, "{\"prompt\":\"p\",\"chosen\":1,\"rejected\":\"r\"}");
    else
        text_format(b, "{\"prompt\":\"Say %d\",\"chosen\":\"%*d\",\"rejected\":\"%d\",\"margin\":%d.5}", i / 2, i % 70,
                    i, i % 7 ? -i : i, i);
}

static void unpaired(TextBuffer *b, int i) {
    text_format(b, "{\"prompt\":\"Count to %d\",\"completion\":\"%*d\",\"label\":%s}", i, i % 70, i,
                i % 97 == 50 ? "2"
                : i % 3      ? "true"
                             : "false");
}

static void prompt(TextBuffer *b, int i) {
    if (i % 97 == 50) text_string(b, "{\"prompt\":\"\",\"answer\":\"\"}");
    else
        text_format(b, "{\"prompt\":\"%d+%d=\",\"answer\":\"%s\",\"task\":\"%s\",\"level\":%d}", i, i,
                    i % 19 ? "7/2" : "x", i % 5 ? "math" : "mine", i % 4);
}

static void document(TextBuffer *b, int i) {
    if (i % 97 == 50) text_string(b, "{\"text\":null}");
    else text_format(b, "{\"text\":\"Document %d has %*d words, and it isn't long.\",\"source\":\"s\"}", i, i % 80, i);
}

/* Writes a file of rows. */
static void put_rows(const char *name, void (*row)(TextBuffer *, int), bool array) {
    TextBuffer b = {0};
    if (array) text_string(&b, "[");
    for (int i = 0; i < ROWS; i++) {
        row(&b, i);
        text_string(&b, array && i + 1 < ROWS ? ",\n" : "\n");
    }
    if (array) text_string(&b, "]");
    put(name, b.text);
    text_free(&b);
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

/* Runs make_shard with 1, 2 and 7 threads and expects the same status, messages and shards, the training shard and
 * perhaps a validation shard. `holds`: a part of the messages. */
static void assert_same(int status, const char *options, const char *holds) {
    static const int threads[] = {1, 2, 7};
    char command[1000], *message = NULL;
    uint8_t *shard[2] = {NULL, NULL};
    size_t bytes[2] = {0};
    for (int i = 0; i < 3; i++) {
        snprintf(command, sizeof command, "OMP_NUM_THREADS=%d data/make_shard -o $T/x.shard %s", threads[i], options);
        unlink(files_path("x.shard")), unlink(files_path("v.shard"));
        run(status, command);
        assert_holds(said, holds);
        if (!i) message = strdup(said);
        else assert_string_equal(said, message);
        for (int k = 0; k < 2; k++) {
            const char *path = files_path(k ? "v.shard" : "x.shard");
            size_t n = 0;
            uint8_t *now = access(path, F_OK) ? NULL : files_get(path, &n);
            if (k == 0) assert_int_equal(now != NULL, status == 0);
            if (i) {
                assert_int_equal(n, bytes[k]);
                if (n) assert_memory_equal(now, shard[k], n);
                free(now);
            } else {
                shard[k] = now;
                bytes[k] = n;
            }
        }
    }
    free(message), free(shard[0]), free(shard[1]);
}

static void test_chat(void **state) {
    (void)state;
    put_rows("a.jsonl", chat, false);
    put_rows("b.json", unpaired, true);
    assert_same(0, "-i $T/a.jsonl --skip-bad", "invalid lines skipped: 58 (first: ");
    assert_same(0, "-i $T/a.jsonl --skip-bad --val-output $T/v.shard --val-fraction 0.3 --max-tokens 120",
                "occurrences of further fields, which are not read: ");
    assert_same(0, "-i $T/b.json --skip-bad --truncation drop --max-tokens 60 --template llama", "x.shard: unpaired, ");
    assert_same(0, "-i $T/a.jsonl --skip-bad --limit 40 --tokenizer tests/golden/tokenizer_small.json",
                "x.shard: chat, 40 records");
    assert_same(1, "-i $T/a.jsonl", "a.jsonl: line 51: field 'messages[0].content': is absent");
    assert_same(0, "-i $T/a.jsonl --limit 44", "x.shard: chat, 44 records"); /* those before line 51 */
    assert_same(1, "-i $T/a.jsonl --limit 46", "a.jsonl: line 51: ");
}

/* A model's own template, which writes old turns differently, so that a row becomes several records. */
static void test_model_template(void **state) {
    (void)state;
    put_rows("a.jsonl", chat, false);
    put("t.jinja", "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
                   "{% if loop.last and m.thinking %}{{ '[' + m.thinking + ']' }}{% endif %}"
                   "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
                   "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}");
    assert_same(0, "-i $T/a.jsonl --skip-bad --chat-template-path $T/t.jinja",
                "conversations written as one record per assistant message");
}

static void test_preferences(void **state) {
    (void)state;
    put_rows("a.jsonl", preference, false);
    assert_same(0, "-i $T/a.jsonl --skip-bad --val-output $T/v.shard --val-fraction 0.5",
                "records dropped because chosen and rejected are the same: ");
    assert_same(1, "-i $T/a.jsonl", "a.jsonl: line 51: field 'chosen': is a number, expected a string");
}

static void test_prompts(void **state) {
    (void)state;
    put_rows("a.jsonl", prompt, false);
    assert_same(0, "-i $T/a.jsonl --skip-bad", "records whose task has no verifier");
    assert_same(1, "-i $T/a.jsonl", "a.jsonl: line 51: field 'prompt': is empty");
}

static void test_text(void **state) {
    (void)state;
    TextBuffer b = {0};
    put_rows("a.jsonl", document, false);
    assert_same(0, "-i $T/a.jsonl --skip-bad --tokenizer tests/golden/tokenizer_small.json", "field 'source'");
    assert_same(1, "-i $T/a.jsonl", "a.jsonl: line 51: field 'text': is absent, expected a string");
    for (int i = 0; b.length < 1300000; i++)
        text_format(&b, "Line %d: don't count %*d.\n%s", i, i % 50, i, i % 40 ? "" : "\n\n");
    put("a.txt", b.text);
    assert_same(0, "-i $T/a.txt --tokenizer tests/golden/tokenizer_small.json", "text, 1 documents");
    assert_same(0, "-i $T/a.txt --separator '\\n\\n' --val-output $T/v.shard --val-fraction 0.2", "x.shard: text, ");
    assert_same(0, "-i $T/a.txt -i $T/a.jsonl --separator '\\n\\n' --limit 700 --skip-bad", "text, 700 documents");
    text_free(&b);
}

/* A file that ends in the middle: the rows before are converted first. */
static void test_damaged(void **state) {
    (void)state;
    put_rows("a.jsonl", preference, false);
    put_rows("b.jsonl", document, false);
    run(0,
        "head -c 3000 $T/a.jsonl > $T/c.jsonl && sed -i '$d' $T/c.jsonl && gzip -c $T/a.jsonl | head -c 9000 > $T/d.gz");
    assert_same(1, "-i $T/d.gz --skip-bad", "d.gz: gzip stream is truncated");
    assert_same(1, "-i $T/d.gz", "line 51: ");
    assert_same(0, "-i $T/d.gz --limit 20", "20 records");
    assert_same(1, "-i $T/c.jsonl -i $T/b.jsonl", "b.jsonl: line 1: is a row of kind text");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat),    cmocka_unit_test(test_model_template), cmocka_unit_test(test_preferences),
        cmocka_unit_test(test_prompts), cmocka_unit_test(test_text),           cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests_name("make_shard", tests, setup, teardown);
}
