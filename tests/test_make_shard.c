/* test_make_shard.c - make_shard with several threads: the same bytes, counts and messages as with one, for every kind
 * of row, with invalid rows among them.
 *
 * Needs ./data/make_shard. */
#include "../llmc/base/error.h"    /* Error */
#include "../llmc/base/text.h"     /* text_string, TextBuffer, text_format, text_free */
#include "../llmc/records/shard.h" /* shard_close, RECORD_CHAT, Shard, record_free, ... */
#include "files.h"                 /* files_path, files_directory, files_get, files_setup, ... */
#include "shards.h"                /* open_shard, assert_record, refused */
#include "shell.h"                 /* run, put, said, assert_holds, ... */

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
                "records dropped because two of their completions are the same: ");
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

/* Without --input, standard input is read. */
static void test_standard_input(void **state) {
    (void)state;
    put_rows("a.jsonl", preference, false);
    run(0,
        "data/make_shard -o $T/x.shard --skip-bad < $T/a.jsonl && data/make_shard -i $T/a.jsonl -o $T/y.shard --skip-bad && "
        "cmp $T/x.shard $T/y.shard");
    assert_same(0, "--skip-bad < $T/a.jsonl", "x.shard: preference, ");
}

/* ---- wordings -------------------------------------------------------------------------------------------------- */

/* The text of record i of $T/x.shard, whose tokens are bytes. The result must be freed. */
static char *record_text(const Shard *s, int64_t i) {
    Error e;
    Record r = {0};
    if (!shard_record(s, i, &r, &e)) fail_msg("%s", e.text);
    char *text = calloc((size_t)r.count + 1, 1);
    for (int k = 0; k < r.count; k++) text[k] = r.tokens[k] < 256 ? (char)r.tokens[k] : '$';
    record_free(&r);
    return text;
}

/* Each row gets one wording of its task, all equally often; with several per row they differ. */
static void test_wordings(void **state) {
    (void)state;
    Error e;
    Shard s;
    TextBuffer b = {0};
    for (int i = 0; i < ROWS; i++)
        text_format(&b, "{\"task\":\"%s\",\"a\":%d,\"label\":\"l%d\"}\n", i % 5 ? "three" : "one", i, i);
    put("r.jsonl", b.text);
    put("w.jsonl", "{\"task\":\"three\",\"prompt\":\"A{a}:\",\"completion\":\"{label}\"}\n"
                   "{\"task\":\"three\",\"prompt\":\"B{{{a}}}:\",\"completion\":\"{label}\"}\n"
                   "{\"task\":\"three\",\"prompt\":\"C{label}:\",\"completion\":\"{a}\"}\n"
                   "{\"task\":\"one\",\"prompt\":\"D{a}:\",\"completion\":\"{label}\"}\n");
    for (int per = 1; per <= 3; per++) {
        char command[200], expected[64];
        int seen[4] = {0};
        snprintf(command, sizeof command, "-i $T/r.jsonl --wordings $T/w.jsonl --wordings-per-row %d", per);
        snprintf(expected, sizeof expected, "x.shard: chat, %d records", ROWS * 4 / 5 * per + ROWS / 5);
        assert_same(0, command, expected);
        snprintf(command, sizeof command,
                 "data/make_shard -o $T/x.shard -i $T/r.jsonl --wordings $T/w.jsonl "
                 "--wordings-per-row %d",
                 per);
        run(0, command);
        assert_null(strstr(said, "which is not read"));
        if (!shard_open(&s, files_path("x.shard"), &e)) fail_msg("%s", e.text);
        int64_t record = 0;
        for (int i = 0; i < ROWS; i++) {
            int of_row[4] = {0};
            for (int k = 0; k < (i % 5 ? per : 1); k++) {
                char *text = record_text(&s, record++), right[4][40];
                snprintf(right[0], 40, "A%d:l%d$", i, i), snprintf(right[1], 40, "B{%d}:l%d$", i, i);
                snprintf(right[2], 40, "Cl%d:%d$", i, i), snprintf(right[3], 40, "D%d:l%d$", i, i);
                assert_in_range(*text, 'A', 'D');
                assert_string_equal(text, right[*text - 'A']);
                assert_true((*text == 'D') == !(i % 5));
                assert_int_equal(of_row[*text - 'A']++, 0);
                seen[*text - 'A']++;
                free(text);
            }
        }
        assert_int_equal(record, s.count);
        /* of 1200 rows each wording has a third per wording of a row: the deviation is at most sqrt(1200 2/9) = 16 */
        for (int k = 0; k < 3; k++) assert_in_range(seen[k], 400 * per - 80, 400 * per + 80);
        shard_close(&s);
    }
#define WORDED "data/make_shard -o $T/x.shard -i $T/r.jsonl --wordings $T/"
    put("none.jsonl", "{\"task\":\"two\",\"prompt\":\"A{a}:\",\"completion\":\"{label}\"}\n");
    put("half.jsonl", "{\"prompt\":\"A{a}:\",\"completion\":\"{label}\"}\n{\"prompt\":\"B{a}:\"}\n");
    put("field.jsonl", "{\"prompt\":\"A{b}:\",\"completion\":\"{label}\"}\n");
    put("key.jsonl", "{\"prompt\":\"A{a}:\",\"answer\":\"{label}\"}\n");
    put("brace.jsonl", "{\"prompt\":\"A{a:\"}\n"), put("empty.jsonl", "\n");
    run(1, WORDED "none.jsonl"), assert_holds(said, "line 1: has the task 'one', for which ");
    run(1, WORDED "half.jsonl"),
        assert_holds(said, "line 2: field 'completion': is in some of the wordings, but not in");
    run(1, WORDED "field.jsonl"), assert_holds(said, "line 1: has no field 'b' (--wordings)");
    run(1, WORDED "key.jsonl"), assert_holds(said, "field 'answer': is not one of a wording");
    run(1, WORDED "brace.jsonl"), assert_holds(said, "a brace is neither part of {field} nor doubled");
    run(1, WORDED "empty.jsonl"), assert_holds(said, "empty.jsonl: has no wording");
    run(2, WORDED "w.jsonl --prompt-template '{a}'"), assert_holds(said, "give only one of them");
    run(2, "data/make_shard -o $T/x.shard -i $T/r.jsonl --prompt-field a --kind prompt --wordings-per-row 2"),
        assert_holds(said, "used only with --wor");
    text_free(&b);
}

/* A prompt that the user names comes before messages of the row, which are then no prompt and do not become one again. */
static void test_named_prompt(void **state) {
    (void)state;
    put("m.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"q\":\"Question\",\"answer\":\"3\"}\n");
    static const char *const options[] = {"--prompt-field q", "--prompt-template 'Q: {q}'"}, *const prompts[] = {
                                                                                                 "Question",
                                                                                                 "Q: Question"};
    for (int i = 0; i < 2; i++) {
        char command[200];
        Error e;
        Shard s;
        Record r = {0};
        snprintf(command, sizeof command, "data/make_shard -o $T/x.shard -i $T/m.jsonl %s", options[i]);
        run(0, command);
        assert_holds(said, "field 'messages', which is not read: 1");
        if (!shard_open(&s, files_path("x.shard"), &e) || !shard_record(&s, 0, &r, &e)) fail_msg("%s", e.text);
        assert_string_equal(r.text, prompts[i]);
        assert_null(strstr(r.fields, "messages"));
        record_free(&r), shard_close(&s);
    }
    run(2, "data/make_shard -o $T/x.shard -i $T/m.jsonl --prompt-field q --messages-field messages");
    assert_holds(said, "--messages-field and --prompt-field: both give the prompt");
}

/* ---- tasks of Super-NaturalInstructions, rows of T0 and FLAN --------------------------------------------------------- */

/* A task over several lines, as they are published, and one on a line, as Tk-Instruct's reader makes them. */
static const char super_ni[] =
    "{\n    \"Contributors\": [\"A\"],\n    \"Categories\": [\"Question Answering\", \"Other\"],\n"
    "    \"Definition\": [\"  Give the currency of the {country} \\\"named\\\" here \"],\n"
    "    \"Positive Examples\": [\n"
    "        {\"input\": \"India\", \"output\": \"Rupee\", \"explanation\": \"It is used in India\"},\n"
    "        {\"input\": \"Which one: Japan?\", \"output\": \" Yen. \", \"explanation\": \"It is.\"},\n"
    "        {\"input\": \"Chile\", \"output\": \"Peso\"}\n    ],\n"
    "    \"Negative Examples\": [{\"input\": \"Peru\", \"output\": \"Dollar\", \"explanation\": \"Wrong\"}],\n"
    "    \"Instances\": [\n        {\"id\": \"a\", \"input\": \"France\\n\", \"output\": [\"Euro\"]},\n"
    "        {\"id\": \"b\", \"input\": \"\", \"output\": [\"Franc\", \"Swiss franc\"]}\n    ]\n}\n\n"
    "{\"Definition\": \"Say yes!\", \"Positive Examples\": [], \"Negative Examples\": [], \"Instance\": {\"input\": \"no\", \"output\": \"yes\"}}\n";

#define NI_DEFINITION "Definition: Give the currency of the {country} \"named\" here.\n\n"
#define NI_POSITIVE                                                                                                    \
    " Positive Example 1 -\nInput: India.\n Output: Rupee.\n\n"                                                        \
    " Positive Example 2 -\nInput: Which one: Japan?\n Output: Yen.\n\n"
#define NI_EXPLAINED                                                                                                   \
    " Positive Example 1 -\nInput: India.\n Output: Rupee.\n Explanation: It is used in India.\n\n"                    \
    " Positive Example 2 -\nInput: Which one: Japan?\n Output: Yen.\n Explanation: It is.\n\n"                         \
    " Positive Example 3 -\nInput: Chile.\n Output: Peso.\n\n"                                                         \
    " Negative Example 1 -\nInput: Peru.\n Output: Dollar.\n Explanation: Wrong.\n\n"
#define NI_INPUT "Now complete the following example -\nInput: "
#define NI       "data/make_shard -i $T/ni.json -o $T/x.shard --super-ni "

/* Prompts as ni_collator.py of Tk-Instruct writes them. */
static void test_super_ni(void **state) {
    (void)state;
    put("ni.json", super_ni);
    run(0, NI);
    Shard s = open_shard("x.shard", RECORD_CHAT, 3);
    assert_record(&s, 0, NI_DEFINITION NI_POSITIVE NI_INPUT "France.\nOutput: [Euro<|endoftext|>]");
    assert_record(&s, 2, "Definition: Say yes!\n\n" NI_INPUT "no.\nOutput: [yes<|endoftext|>]");
    shard_close(&s);
    run(0, NI "--num-pos-examples 4 --num-neg-examples 2 --add-explanation");
    s = open_shard("x.shard", RECORD_CHAT, 3);
    assert_record(&s, 0, NI_DEFINITION NI_EXPLAINED NI_INPUT "France.\nOutput: [Euro<|endoftext|>]");
    shard_close(&s);
    /* the second example does not fit; the prompt with one has 175 bytes, each a token */
    run(0, NI "--max-source-length 175");
    s = open_shard("x.shard", RECORD_CHAT, 3);
    assert_record(&s, 0,
                  NI_DEFINITION " Positive Example 1 -\nInput: India.\n Output: Rupee.\n\n" NI_INPUT
                                "France.\nOutput: [Euro<|endoftext|>]");
    shard_close(&s);
    run(0, NI "--max-source-length 174");
    s = open_shard("x.shard", RECORD_CHAT, 3);
    assert_record(&s, 0, NI_DEFINITION NI_INPUT "France.\nOutput: [Euro<|endoftext|>]");
    shard_close(&s);
    /* prompts with answers; a category is a cluster */
    run(0, NI "--kind prompt --task em --hold-out 'cluster=Question Answering' --val-output $T/v.shard");
    s = open_shard("v.shard", RECORD_PROMPT, 2);
    Error e;
    Record r = {0};
    assert_true(shard_record(&s, 1, &r, &e));
    assert_string_equal(r.text, NI_DEFINITION NI_POSITIVE NI_INPUT ".\nOutput: ");
    assert_true(!strcmp(r.answer, "Franc") || !strcmp(r.answer, "Swiss franc"));
    assert_holds(r.fields, "\"answers\":[\"Franc\",\"Swiss franc\"]");
    record_free(&r), shard_close(&s);
    /* both outputs occur, and so many instances are kept, all equally often */
    TextBuffer b = {0};
    text_string(&b, "{\"Definition\":\"d\",\"Positive Examples\":[],\"Instances\":[");
    for (int i = 0; i < 40; i++) text_format(&b, "%s{\"input\":\"%d\",\"output\":[\"one\",\"two\"]}", i ? "," : "", i);
    text_string(&b, "]}\n");
    put("many.json", b.text);
    text_free(&b);
    int kept[40] = {0}, two = 0;
    for (int seed = 0; seed < 20; seed++) {
        char command[200];
        snprintf(command, sizeof command,
                 "data/make_shard -i $T/many.json -o $T/x.shard --super-ni --max-num-instances-per-task 10 --seed %d",
                 seed);
        run(0, command);
        s = open_shard("x.shard", RECORD_CHAT, 10);
        for (int64_t i = 0; i < 10; i++) {
            char text[100];
            int number = -1;
            assert_true(shard_record(&s, i, &r, &e));
            for (int k = 0; k < 100; k++) text[k] = k < r.count && r.tokens[k] < 128 ? (char)r.tokens[k] : 0;
            assert_int_equal(sscanf(text, "Definition: d.\n\nNow complete the following example -\nInput: %d", &number),
                             1);
            kept[number]++;
            two += strstr(text, "two") != NULL;
        }
        record_free(&r), shard_close(&s);
    }
    for (int i = 0; i < 40; i++) assert_true(kept[i] <= 12); /* 5 of 20 on average */
    assert_true(two > 70 && two < 130);
    /* the threads, and bad tasks */
    assert_same(0, "-i $T/ni.json -i $T/many.json --super-ni --num-neg-examples 0", "x.shard: chat, 43 records");
    put("bad.json",
        "{\"Definition\":\"d\",\n\"Instances\":[]}\n\n{\"Definition\":\"d\",\"Positive Examples\":[{\"input\":3}],\n"
        "\"Instances\":[{\"input\":\"i\",\"output\":[\"o\"]},{\"output\":[\"o\"]},{\"input\":\"i\"}]}\n{\n\"a\": {}\n} x\n{\n");
    assert_same(0, "-i $T/ni.json -i $T/bad.json --super-ni --skip-bad", "invalid lines skipped: 7 (first: ");
    assert_holds(said, "bad.json: line 1: field 'Instances': is an empty list");
    run(0, "data/make_shard -i $T/bad.json -o $T/x.shard --super-ni --skip-bad --num-pos-examples 0");
    assert_holds(said, "x.shard: chat, 1 records"); /* the examples of its task are bad, but not written */
    put("bad.json",
        "{\"Definition\":\"d\",\n\"Positive Examples\":[{\"input\":3}],\n\"Instances\":[{\"input\":\"i\",\"output\":[\"o\"]}]}");
    refused(1, "data/make_shard -i $T/bad.json -o $T/x.shard --super-ni",
            "line 1: field 'Positive Examples.0.input': is a number, expected a string");
    put("bad.json", "\n{\"prompt\":\"p\",\"completion\":\"c\"}\n");
    refused(1, "data/make_shard -i $T/bad.json -o $T/x.shard --super-ni", "line 2: has no field 'Instances'");
    refused(2, NI "--prompt-field input", "--super-ni and --prompt-field: give only one of them");
    refused(2, NI "--kind preference", "makes records of kind chat or prompt");
    refused(2, "data/make_shard -i $T/ni.json -o $T/x.shard --num-pos-examples 1", "used only with --super-ni");
}

/* P3 has lists of ids next to the texts; FLAN has texts alone. */
static void test_inputs_and_targets(void **state) {
    (void)state;
    put("flan.jsonl", "{\"inputs\":\"Is it? \",\"targets\":\"yes\",\"task_name\":\"qa\"}\n");
    put("p3.jsonl",
        "{\"inputs\":[3,4],\"inputs_pretokenized\":\"Is it? \",\"targets\":[5],\"targets_pretokenized\":\"yes\","
        "\"answer_choices\":[\"yes\",\"no\"]}\n");
    static const char *const files[] = {"flan.jsonl", "p3.jsonl"};
    for (int i = 0; i < 2; i++) {
        char command[200];
        snprintf(command, sizeof command, "data/make_shard -i $T/%s -o $T/x.shard", files[i]);
        run(0, command);
        assert_holds(said, i ? "answer_choices" : "task_name");
        Shard s = open_shard("x.shard", RECORD_CHAT, 1);
        assert_record(&s, 0, "Is it? [yes<|endoftext|>]");
        shard_close(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat),
        cmocka_unit_test(test_model_template),
        cmocka_unit_test(test_preferences),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_standard_input),
        cmocka_unit_test(test_wordings),
        cmocka_unit_test(test_named_prompt),
        cmocka_unit_test(test_super_ni),
        cmocka_unit_test(test_inputs_and_targets),
    };
    return cmocka_run_group_tests_name("make_shard", tests, setup, teardown);
}
