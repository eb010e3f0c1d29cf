/* test_data.c - the data programs as a user runs them: make_shard on every kind of line and option, show on every kind
 * of file, bad input; and jsonl.h itself.
 *
 * Needs ./data/make_shard and ./data/show. */
#include "../llmc/base/error.h"       /* Error, xcalloc */
#include "../llmc/base/jsonl.h"       /* jsonl_next, jsonl_close, jsonl_open, Jsonl, ... */
#include "../llmc/base/text.h"        /* TextBuffer, text_free, text_string, text_format, ... */
#include "../llmc/model/checkpoint.h" /* checkpoint_begin_section, checkpoint_put, CheckpointWriter, ... */
#include "../llmc/model/config.h"     /* ModelConfig, gpt2_config */
#include "../llmc/model/tensors.h"    /* gpt2_file_elements */
#include "../llmc/records/shard.h"    /* shard_close, RECORD_CHAT, Shard, RECORD_PREFERENCE, ... */
#include "../llmc/records/tokens.h"   /* TokenShard, token_at, tokens_close, tokens_open */
#include "../llmc/text/tokenizer.h"   /* Tokenizer, tokenizer_bytes, tokenizer_decode, tokenizer_free, ... */
#include "files.h"                    /* files_path, files_count, files_put, files_assert_content, ... */
#include "shards.h"                   /* refused, open_shard, assert_record */
#include "shell.h"                    /* run, assert_holds, put, out, ... */
#include <time.h>

static Tokenizer bytes;

static int setup(void **state) {
    Error e;
    if (files_setup(state) || !tokenizer_bytes(&bytes, &e)) return 1;
    return setenv("T", files_directory, 1);
}

static int teardown(void **state) {
    free(said), free(out);
    tokenizer_free(&bytes);
    return files_teardown(state);
}

/* ---- chats ----------------------------------------------------------------------------------------------------- */

static void test_chat(void **state) {
    (void)state;
    put("a.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Yo\"}]}\n"
        "\n"
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"é?\"},{\"from\":\"gpt\",\"value\":\"è\"}]}\r\n"
        "{\"messages\":[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":[{\"type\":"
        "\"text\",\"text\":\"a\"},{\"text\":\"b\"}]},{\"role\":\"assistant\",\"content\":\"c\"}],\"id\":7}");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --system Be");
    assert_holds(said, "a.shard: chat, 3 records");
    Shard s = open_shard("a.shard", RECORD_CHAT, 3);
    assert_string_equal(s.chat_template, "chatml");
    assert_int_equal(s.vocab, 260);
    assert_record(&s, 0,
                  "<|im_start|>system\nBe<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
                  "[Yo<|im_end|>]\n");
    assert_record(&s, 1,
                  "<|im_start|>system\nBe<|im_end|>\n<|im_start|>user\né?<|im_end|>\n<|im_start|>assistant\n"
                  "[è<|im_end|>]\n");
    assert_record(&s, 2,
                  "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
                  "[c<|im_end|>]\n");
    shard_close(&s);

    run(0, "data/make_shard --quiet -i $T/a.jsonl -o $T/a.shard --template llama --limit 1");
    assert_string_equal(said, "");
    s = open_shard("a.shard", RECORD_CHAT, 1);
    assert_int_equal(s.vocab, 264);
    assert_record(&s, 0,
                  "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                  "<|start_header_id|>assistant<|end_header_id|>\n\n[Yo<|eot_id|>]");
    shard_close(&s);

    /* prompt and completion, as texts and as messages, under other field names */
    put("b.jsonl", "{\"prompt\":\"2+3=\",\"completion\":\"5\"}\n{\"prompt\":\"\",\"completion\":\"x\"}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o - > $T/b.shard");
    s = open_shard("b.shard", RECORD_CHAT, 2);
    assert_string_equal(s.chat_template, "plain");
    assert_record(&s, 0, "2+3=[5<|endoftext|>]");
    assert_record(&s, 1, "[x<|endoftext|>]");
    shard_close(&s);
    put("b.jsonl", "{\"q\":{\"text\":\"2+3=\"},\"a\":[\"no\",\"5\"]}\n");
    run(0, "data/make_shard -i - -o $T/b.shard.zst --prompt-field q.text --completion-field a.1 --template "
           "'{user}Q: {content}\\n{assistant}A: {content}{eos}' < $T/b.jsonl");
    s = open_shard("b.shard.zst", RECORD_CHAT, 1);
    assert_record(&s, 0, "Q: 2+3=\nA: [5<|endoftext|>]");
    shard_close(&s);
    put("b.jsonl", "{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],\"completion\":[{\"role\":\"assistant\","
                   "\"content\":\"a\"}]}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard");
    s = open_shard("b.shard", RECORD_CHAT, 1);
    assert_record(&s, 0, "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[a<|im_end|>]\n");
    shard_close(&s);
    put("b.jsonl", "{\"turns\":[{\"role\":\"assistant\",\"content\":\"a\"}]}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard --messages-field turns --template plain");
    s = open_shard("b.shard", RECORD_CHAT, 1);
    assert_record(&s, 0, "[a<|endoftext|>]");
    shard_close(&s);
}

static void test_chat_limits(void **state) {
    (void)state;
    put("a.jsonl", "{\"prompt\":\"12345678\",\"completion\":\"1\"}\n{\"prompt\":\"1\",\"completion\":\"12345678\"}\n"
                   "{\"prompt\":\"1\",\"completion\":\"2\"}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --max-tokens 8");
    assert_holds(said, "warning: records dropped because they are longer than --max-tokens: 1 (first: ");
    assert_holds(said, "warning: records truncated to --max-tokens, without their stop token: 1 (first: ");
    Shard s = open_shard("a.shard", RECORD_CHAT, 2);
    assert_record(&s, 0, "1[1234567]");
    assert_record(&s, 1, "1[2<|endoftext|>]");
    shard_close(&s);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --max-tokens 9");
    s = open_shard("a.shard", RECORD_CHAT, 3);
    assert_record(&s, 0, "12345678[1]");
    shard_close(&s);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --max-tokens 9 --truncation drop");
    assert_holds(said, "longer than --max-tokens: 2 ");
    s = open_shard("a.shard", RECORD_CHAT, 1);
    shard_close(&s);
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --max-tokens 9 --truncation error",
            "a.jsonl: line 1: the conversation has 10 tokens, --max-tokens is 9");
}

static void test_chat_warnings(void **state) {
    (void)state;
    put("a.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
    assert_holds(said, "warning: records with an empty mask, because they have no assistant message: 1 ");
    put("a.jsonl", "{\"prompt\":\"<|im_end|>\",\"completion\":\"a\\nb\"}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --template '{any}{content}\\n'");
    assert_holds(said,
                 "texts that contain the name of a special token as plain text (give prompts without their template)");
    assert_holds(said, "completions that contain the text that ends the assistant's turn: 1 ");
    /* GPT-2's words begin with their space; the byte tokenizer does not need that */
    put("b.jsonl", "{\"prompt\":\"2+3= \",\"completion\":\"5\"}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/a.shard --tokenizer tests/golden/tokenizer_small.json");
    assert_holds(said, "prompts that end in a space");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/a.shard --tokenizer tests/golden/tokenizer_small.json "
           "--template chatml");
    assert_null(strstr(said, "warning"));
    run(0, "data/make_shard -i $T/b.jsonl -o $T/a.shard");
    assert_null(strstr(said, "warning"));
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --template '{any}{content}<|im_done|>'");
    assert_holds(said, "added the template's <|im_done|> to the tokenizer as token 260");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --template '{any}{content}END'",
            "'END', which is not one token");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --template '{any}{content}'",
            "nothing after the assistant's");
    refused(1,
            "data/make_shard -i $T/a.jsonl -o $T/x.shard --template '{user}{content}{assistant}{content}{eos}' "
            "--system S",
            "line 1: chat template: has no section for role 'system'");
}

/* ---- prompts --------------------------------------------------------------------------------------------------- */

static void assert_prompt(const Shard *s, int64_t i, const char *text, const char *task, const char *answer,
                          const char *fields) {
    Error e;
    Record r = {0};
    assert_true(shard_record(s, i, &r, &e));
    assert_int_equal(r.prompt, r.count);
    assert_string_equal(r.text, text);
    assert_string_equal(r.task, task);
    assert_string_equal(r.answer, answer);
    assert_string_equal(r.fields, fields);
    record_free(&r);
}

static void test_prompts(void **state) {
    (void)state;
    put("a.jsonl", "{\"prompt\":\"2+3=\",\"answer\":5,\"task\":\"add\"}\n"
                   "{\"prompt\":\"Make 24\",\"numbers\":[1,2,3,4],\"target\":24,\"answer\":\"24\",\"none\":null}\n"
                   "{\"prompt\":[{\"role\":\"user\",\"content\":\"Sort\"}],\"answer\":[1,2.5,\"x\"]}\n"
                   "{\"prompt\":\"?\",\"answer\":0.1}\n{\"prompt\":\"?\",\"answer\":true}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --task countdown");
    Shard s = open_shard("a.shard", RECORD_PROMPT, 5);
    assert_record(&s, 0, "2+3=");
    assert_prompt(&s, 0, "2+3=", "add", "5", "");
    assert_prompt(&s, 1, "Make 24", "countdown", "24", "{\"numbers\":[1,2,3,4],\"target\":24}");
    assert_prompt(&s, 2, "Sort", "countdown", "[1,2.5,\"x\"]",
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"Sort\"}]}");
    assert_prompt(&s, 3, "?", "countdown", "0.1", "");
    assert_prompt(&s, 4, "?", "countdown", "true", "");
    shard_close(&s);

    /* a GSM8K line; the template's text of a prompt of messages */
    put("b.jsonl",
        "{\"question\":\"How many?\",\"answer\":\"48/2 = <<48/2=24>>24\\n#### 1\\n#### 7,200 \\n\",\"kind\":\"gsm8k\"}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard --prompt-field question --task-field kind --template chatml");
    s = open_shard("b.shard", RECORD_PROMPT, 1);
    assert_record(&s, 0, "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n");
    assert_prompt(&s, 0, "How many?", "gsm8k", "48/2 = <<48/2=24>>24\n#### 1\n#### 7,200 \n", "");
    shard_close(&s);
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard --prompt-field question --task gsm8k --answer-after '####'");
    s = open_shard("b.shard", RECORD_PROMPT, 1);
    assert_prompt(&s, 0, "How many?", "gsm8k", "7,200", "{\"kind\":\"gsm8k\"}");
    shard_close(&s);
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard --prompt-field question --completion-field answer");
    s = open_shard("b.shard", RECORD_CHAT, 1);
    shard_close(&s);
    refused(1, "data/make_shard -i $T/b.jsonl -o $T/x.shard --prompt-field question --answer-field none --kind prompt",
            "no row has the field 'none' (--answer-field)");
    put("c.jsonl", "{\"prompt\":\"?\"}\n");
    run(0, "data/make_shard -i $T/c.jsonl -o $T/c.shard");
    assert_holds(said, "warning: records with neither an answer nor a task for a verifier: 1 ");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard --prompt-field question --task mine");
    assert_holds(said, "--task mine: no verifier of that name");
    put("b.jsonl",
        "{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"},{\"role\":"
        "\"user\",\"content\":\"r\"}],\"answer\":\"x\"}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard");
    s = open_shard("b.shard", RECORD_PROMPT, 1);
    const char *text =
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
        "<|im_start|>assistant\n";
    assert_record(&s, 0, text);
    assert_prompt(&s, 0, text, "", "x",
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"},"
                  "{\"role\":\"user\",\"content\":\"r\"}]}");
    shard_close(&s);

    /* a prompt is never truncated */
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --max-tokens 4 --template plain");
    assert_holds(said, "warning: records dropped because they are longer than --max-tokens: 1 ");
    s = open_shard("a.shard", RECORD_PROMPT, 4);
    shard_close(&s);
    put("b.jsonl", "{\"prompt\":\"\",\"answer\":\"1\"}\n");
    refused(1, "data/make_shard -i $T/b.jsonl -o $T/x.shard", "line 1: field 'prompt': is empty");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --answer-after '####'",
            "line 1: field 'answer': does not contain '####'");
}

/* ---- preferences ----------------------------------------------------------------------------------------------- */

static void test_preferences(void **state) {
    (void)state;
    Error e;
    Record r = {0};
    put("a.jsonl",
        "{\"prompt\":\"Q\",\"chosen\":\"yes\",\"rejected\":\"no\",\"margin\":1.5}\n"
        "{\"prompt\":\"Q\",\"chosen\":\"same\",\"rejected\":\"same\"}\n"
        "{\"chosen\":\"\\n\\nHuman: a\\n\\nAssistant: b c\",\"rejected\":\"\\n\\nHuman: a\\n\\nAssistant: b d\"}\n"
        "{\"chosen\":\"tell me nothing\",\"rejected\":\"tell me now\"}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
    assert_holds(said, "warning: records dropped because two of their completions are the same: 1 (first: ");
    Shard s = open_shard("a.shard", RECORD_PREFERENCE, 3);
    assert_record(&s, 0, "Q|yes<|endoftext|>|no<|endoftext|>");
    assert_record(&s, 1, "\n\nHuman: a\n\nAssistant:| b c<|endoftext|>| b d<|endoftext|>");
    assert_record(&s, 2, "tell me| nothing<|endoftext|>| now<|endoftext|>");
    assert_true(shard_record(&s, 0, &r, &e));
    assert_int_equal(r.completions, 2);
    assert_int_equal(r.length[0], 4);
    assert_int_equal(r.length[1], 3);
    assert_true(r.margin == 1.5f);
    record_free(&r);
    shard_close(&s);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --prompt-end 'a\\n\\n' --template chatml");
    s = open_shard("a.shard", RECORD_PREFERENCE, 3);
    assert_record(&s, 0, "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n|yes<|im_end|>|no<|im_end|>");
    assert_record(&s, 1,
                  "<|im_start|>user\n\n\nHuman: a\n\n<|im_end|>\n<|im_start|>assistant\n|Assistant: b c<|im_end|>|"
                  "Assistant: b d<|im_end|>");
    shard_close(&s);

    /* lists of messages: with a prompt, without one, and together with a text that repeats the prompt */
    put("b.jsonl",
        "{\"p\":[{\"role\":\"user\",\"content\":\"q\"}],\"c\":[{\"role\":\"assistant\",\"content\":\"y\"}],\"r\":\"n\"}\n"
        "{\"c\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"y\"}],"
        "\"r\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"n\"}],\"m\":2}\n"
        "{\"p\":\"q\",\"c\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"y\"}],"
        "\"r\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"n\"}]}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard --prompt-field p --chosen-field c --rejected-field r "
           "--margin-field m");
    s = open_shard("b.shard", RECORD_PREFERENCE, 3);
    for (int i = 0; i < 3; i++)
        assert_record(&s, i, "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n|y<|im_end|>|n<|im_end|>");
    shard_close(&s);

    put("c.jsonl", "{\"prompt\":\"123\",\"chosen\":\"abcdef\",\"rejected\":\"ab\"}\n"
                   "{\"prompt\":\"123456\",\"chosen\":\"a\",\"rejected\":\"b\"}\n");
    run(0, "data/make_shard -i $T/c.jsonl -o $T/c.shard --max-tokens 6");
    s = open_shard("c.shard", RECORD_PREFERENCE, 1);
    assert_record(&s, 0, "123|abc|ab<|endoftext|>");
    shard_close(&s);
    run(0, "data/make_shard -i $T/c.jsonl -o $T/c.shard --max-tokens 8 --truncation drop");
    s = open_shard("c.shard", RECORD_PREFERENCE, 1);
    shard_close(&s);
    put("c.jsonl", "{\"prompt\":\"1\",\"chosen\":\"a\",\"rejected\":\"b\",\"margin\":\"x\"}\n");
    refused(1, "data/make_shard -i $T/c.jsonl -o $T/x.shard", "field 'margin': is a string, expected a number");
    put("c.jsonl", "{\"chosen\":\"a\",\"rejected\":\"b\"}\n");
    refused(1, "data/make_shard -i $T/c.jsonl -o $T/x.shard",
            "field 'chosen': and 'rejected' have no common beginning");
    put("c.jsonl",
        "{\"chosen\":[{\"role\":\"user\",\"content\":\"q\"}],\"rejected\":[{\"role\":\"user\",\"content\":\"r\"}]}\n");
    refused(1, "data/make_shard -i $T/c.jsonl -o $T/x.shard", "begin with different messages");
}

/* Gold answers after both completions: texts, messages, and as part of rows whose prompt is the common beginning. */
static void test_gold_answers(void **state) {
    (void)state;
#define SAYS(role, text)      "{\"role\":\"" role "\",\"content\":\"" text "\"}"
#define ANSWERED(asked, text) "[" SAYS("user", asked) "," SAYS("assistant", text) "]"
    const char *const pair = "\"chosen\":" ANSWERED("q", "y") ",\"rejected\":" ANSWERED("q", "n");
    char rows[1200];
    put("a.jsonl", "{\"prompt\":\"Q\",\"chosen\":\"yes\",\"rejected\":\"no\",\"reference\":\"yes\"}\n"
                   "{\"chosen\":\"tell me nothing\",\"rejected\":\"tell me now\",\"reference\":\"tell me a\"}\n"
                   "{\"prompt\":\"Q\",\"completions\":[\"a\",\"b\",\"c\"],\"reference\":\"d\"}\n"
                   "{\"prompt\":\"Q\",\"chosen\":\"yes\",\"rejected\":\"no\",\"reference\":null}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
    Shard s = open_shard("a.shard", RECORD_PREFERENCE, 4);
    assert_record(&s, 0, "Q|yes<|endoftext|>|no<|endoftext|>|yes<|endoftext|>");
    assert_record(&s, 1, "tell me| nothing<|endoftext|>| now<|endoftext|>| a<|endoftext|>");
    assert_record(&s, 2, "Q|a<|endoftext|>|b<|endoftext|>|c<|endoftext|>|d<|endoftext|>");
    assert_record(&s, 3, "Q|yes<|endoftext|>|no<|endoftext|>");
    shard_close(&s);
    run(0, "data/show $T/a.shard");
    assert_holds(out, "reference (4 tokens):\nyes<|endoftext|>\n");
    assert_holds(out, "with a gold answer: 3\n");
    run(0, "data/show --json --all $T/a.shard");
    assert_holds(out, "\"reference\":\"yes<|endoftext|>\",\"lengths\":[1,4,3,4]");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --max-tokens 3");
    s = open_shard("a.shard", RECORD_PREFERENCE, 3);
    assert_record(&s, 0, "Q|ye|no|ye");
    shard_close(&s);
    const char *const gold = "[" SAYS("assistant", "g") "]";
    snprintf(rows, sizeof rows,
             "{%s,\"reference\":" ANSWERED(
                 "q", "g") "}\n{%s,\"reference\":\"g\"}\n"
                           "{\"prompt\":\"q\",\"chosen\":\"y\",\"rejected\":\"n\",\"reference\":%s}\n",
             pair, pair, gold);
    put("b.jsonl", rows);
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard");
    s = open_shard("b.shard", RECORD_PREFERENCE, 3);
    for (int i = 0; i < 3; i++)
        assert_record(&s, i,
                      "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n|y<|im_end|>|n<|im_end|>|g<|im_end|>");
    shard_close(&s);
    const char *const wrong[][3] = {
        {"\"chosen\":\"tell me nothing\",\"rejected\":\"tell me now\"", "\"tell a\"",
         "does not begin with the text with which the completions begin"},
        {"\"prompt\":\"q\",\"chosen\":\"y\",\"rejected\":\"n\"", "5", "is a number"},
        {"\"prompt\":\"q\",\"chosen\":\"y\",\"rejected\":\"n\"", ANSWERED("q", "g"),
         "does not begin with the assistant's message"},
        {pair, ANSWERED("r", "g"), "does not begin with the messages with which the completions begin"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char part[200];
        snprintf(rows, sizeof rows, "{%s,\"reference\":%s}\n", wrong[i][0], wrong[i][1]);
        snprintf(part, sizeof part, "line 1: field 'reference': %s", wrong[i][2]);
        put("c.jsonl", rows);
        refused(1, "data/make_shard -i $T/c.jsonl -o $T/x.shard", part);
    }
}

/* Lists of completions from the best to the worst, of different lengths, and pairs in one file. */
static void test_rankings(void **state) {
    (void)state;
    put("a.jsonl", "{\"prompt\":\"Q\",\"completions\":[\"abcdef\",\"ab\",\"c\"]}\n"
                   "{\"prompt\":\"Q\",\"completions\":[\"a\",\"b\",\"a\"]}\n"
                   "{\"prompt\":\"Q\",\"chosen\":\"y\",\"rejected\":\"n\",\"margin\":1}\n"
                   "{\"prompt\":\"Q\",\"completions\":[\"a\",\"bcd\",\"abcx\",\"abcy\"]}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
    assert_holds(said, "records dropped because two of their completions are the same: 1 (first: ");
    assert_holds(said, "a.jsonl, line 2)");
    Shard s = open_shard("a.shard", RECORD_PREFERENCE, 3);
    assert_record(&s, 0, "Q|abcdef<|endoftext|>|ab<|endoftext|>|c<|endoftext|>");
    assert_record(&s, 1, "Q|y<|endoftext|>|n<|endoftext|>");
    assert_record(&s, 2, "Q|a<|endoftext|>|bcd<|endoftext|>|abcx<|endoftext|>|abcy<|endoftext|>");
    shard_close(&s);
    run(0, "data/show --json --all $T/a.shard | data/make_shard -i - -o $T/b.shard --kind preference");
    s = open_shard("b.shard", RECORD_PREFERENCE, 3); /* the rows that show prints are of the same kind */
    shard_close(&s);
    /* truncated: the last two completions of the last row become equal */
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --max-tokens 4");
    assert_holds(said, "two of their completions are the same: 2 (first: ");
    s = open_shard("a.shard", RECORD_PREFERENCE, 2);
    assert_record(&s, 0, "Q|abc|ab<|endoftext|>|c<|endoftext|>");
    shard_close(&s);
    static const char *const wrong[][2] = {
        {"\"completions\":[\"a\"]", "line 1: field 'completions': is a list of one, expected a list of two or more"},
        {"\"completions\":[]", "line 1: field 'completions': is an empty list, expected a list of two or more"},
        {"\"completions\":\"ab\"", "line 1: field 'completions': is a string, expected a list of two or more"},
        {"\"completions\":[\"a\",5,\"b\"]", "line 1: field 'completions': is a number"},
        {"\"completions\":[\"a\",\"b\",\"c\"],\"margin\":1", "field 'margin': is that of a pair, but the row has 3"},
        {"\"completions\":[\"a\",[{\"role\":\"user\",\"content\":\"b\"}]]",
         "completion 2 does not begin with the assistant's message"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char row[200];
        snprintf(row, sizeof row, "{\"prompt\":\"Q\",%s}\n", wrong[i][0]);
        put("c.jsonl", row);
        refused(1, "data/make_shard -i $T/c.jsonl -o $T/x.shard", wrong[i][1]);
    }
}

/* ---- steps ----------------------------------------------------------------------------------------------------- */

static void test_steps(void **state) {
    (void)state;
    put("a.jsonl", "{\"prompt\":\"Q\",\"completions\":[\"ab\",\"cd\",\"e\"],\"labels\":[true,false,0.25]}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
    Shard s = open_shard("a.shard", RECORD_STEP, 1);
    assert_record(&s, 0, "Qab[\n]1cd[\n]0e[\n]62"); /* 0.25: 2 + 240 / 4 */
    shard_close(&s);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --step-separator '' --max-tokens 5");
    assert_holds(said, "records truncated to --max-tokens, without their last steps: 1 ");
    s = open_shard("a.shard", RECORD_STEP, 1);
    assert_record(&s, 0, "Qa[b]1c[d]0");
    shard_close(&s);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --max-tokens 2");
    assert_holds(said, "longer than --max-tokens: 1 ");
    assert_holds(said, "a.shard: is empty");
    put("b.jsonl", "{\"prompt\":\"Q\",\"s\":[\"ab\"],\"l\":[1]}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard --completions-field s --labels-field l");
    const struct {
        const char *line, *message;
    } bad[] = {
        {"{\"prompt\":\"Q\",\"completions\":\"a\",\"labels\":[1]}", "field 'completions': is a string"},
        {"{\"prompt\":\"Q\",\"completions\":[],\"labels\":[]}", "field 'completions': is an empty list"},
        {"{\"prompt\":\"Q\",\"completions\":[\"a\",\"b\"],\"labels\":[1]}", "field 'labels': is not a list of 2"},
        {"{\"prompt\":\"Q\",\"completions\":[\"a\"],\"labels\":[2]}", "field 'labels': label 0 is neither"},
        {"{\"prompt\":\"Q\",\"completions\":[\"a\"],\"labels\":[1.5]}", "field 'labels': label 0 is neither"},
        {"{\"prompt\":\"Q\",\"completions\":[7],\"labels\":[1]}", "field 'completions': is a number"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put("b.jsonl", bad[i].line);
        refused(1, "data/make_shard -i $T/b.jsonl -o $T/x.shard --kind step", bad[i].message);
    }
    put("b.jsonl", "{\"prompt\":\"Q\",\"completions\":[\"\"],\"labels\":[1]}");
    refused(1, "data/make_shard -i $T/b.jsonl -o $T/x.shard --step-separator ''", "step 0 is empty");
}

/* ---- unpaired -------------------------------------------------------------------------------------------------- */

static void assert_label(const Shard *s, int64_t i, int prompt, int label) {
    Error e;
    Record r = {0};
    assert_true(shard_record(s, i, &r, &e));
    assert_int_equal(r.prompt, prompt);
    assert_int_equal(r.label, label);
    record_free(&r);
}

static void test_unpaired(void **state) {
    (void)state;
    put("a.jsonl", "{\"prompt\":\"2+2=\",\"completion\":\"4\",\"label\":true}\n"
                   "{\"prompt\":\"2+3=\",\"completion\":\"four\",\"label\":0}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
    Shard s = open_shard("a.shard", RECORD_UNPAIRED, 2);
    assert_record(&s, 0, "2+2=4<|endoftext|>");
    assert_record(&s, 1, "2+3=four<|endoftext|>");
    assert_label(&s, 0, 4, 1);
    assert_label(&s, 1, 4, 0);
    shard_close(&s);
    run(0, "data/show $T/a.shard");
    assert_holds(out, "record 0: prompt of 4 tokens, completion of 2: good\n2+2=⟦4<|endoftext|>⟧\n");
    assert_holds(out, "record 1: prompt of 4 tokens, completion of 5: bad\n");
    assert_holds(out, "good: 1 of 2, 50.0 %");
    run(0, "data/show --all --json $T/a.shard");
    assert_holds(out, "{\"prompt\":\"2+3=\",\"completion\":\"four<|endoftext|>\",\"label\":false,\"prompt_tokens\":4,");
    /* the limit truncates the end of an answer, or drops the record */
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --max-tokens 6");
    assert_holds(said, "truncated to --max-tokens, without their stop token: 1 ");
    s = open_shard("a.shard", RECORD_UNPAIRED, 2);
    assert_record(&s, 1, "2+3=fo");
    shard_close(&s);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --max-tokens 6 --truncation drop");
    s = open_shard("a.shard", RECORD_UNPAIRED, 1);
    shard_close(&s);
    /* messages, and a label under another name; a label that is neither true nor false is refused, unless
     * the rows are read as chats */
    put("b.jsonl", "{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],\"completion\":[{\"role\":\"assistant\","
                   "\"content\":\"a\"}],\"good\":false}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard --label-field good");
    s = open_shard("b.shard", RECORD_UNPAIRED, 1);
    assert_record(&s, 0, "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>");
    assert_label(&s, 0, 20, 0);
    shard_close(&s);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/b.shard --kind chat");
    s = open_shard("b.shard", RECORD_CHAT, 2);
    shard_close(&s);
    put("b.jsonl", "{\"prompt\":\"q\",\"completion\":\"a\",\"label\":\"news\"}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard --kind chat");
    assert_holds(said, "warning: field 'label', which is not read: 1 (first: ");
    s = open_shard("b.shard", RECORD_CHAT, 1);
    shard_close(&s);
    refused(1, "data/make_shard -i $T/b.jsonl -o $T/x.shard",
            "line 1: field 'label': is 'news', expected true or false (or 1, 0, good, bad)");
    put("b.jsonl", "{\"prompt\":\"q\",\"completion\":\"a\"}\n");
    refused(1, "data/make_shard -i $T/b.jsonl -o $T/x.shard --kind unpaired", "field 'label': is absent");
    put("b.jsonl", "{\"prompt\":\"q\",\"label\":1}\n");
    refused(1, "data/make_shard -i $T/b.jsonl -o $T/x.shard --kind unpaired", "field 'completion': is absent");
}

/* ---- text ------------------------------------------------------------------------------------------------------ */

static void assert_tokens(const char *name, const char *want) {
    Error e;
    TokenShard t;
    TextBuffer text = {0};
    if (!tokens_open(&t, files_path(name), 260, &e)) fail_msg("%s", e.text);
    text_clear(&text);
    for (int64_t i = 0; i < t.count; i++) tokenizer_decode(&bytes, (const int32_t[]){token_at(&t, i)}, 1, true, &text);
    assert_string_equal(text.text, want);
    text_free(&text);
    tokens_close(&t);
}

static void test_text(void **state) {
    (void)state;
    put("a.txt", "One.\n\nTwo\nthree.\n\nFour é");
    run(0, "data/make_shard -i $T/a.txt -o $T/a.bin");
    assert_holds(said, "a.bin: text, 1 documents, 26 tokens");
    assert_tokens("a.bin", "<|endoftext|>One.\n\nTwo\nthree.\n\nFour é");
    run(0, "data/make_shard -i $T/a.txt -i - -o $T/a.bin --separator '\\n\\n' < $T/a.txt");
    assert_tokens("a.bin", "<|endoftext|>One.\n\n<|endoftext|>Two\nthree.\n\n<|endoftext|>Four é<|endoftext|>One.\n\n"
                           "<|endoftext|>Two\nthree.\n\n<|endoftext|>Four é");
    put("b.jsonl", "{\"text\":\"ab\"}\n{\"text\":\"\"}\n{\"text\":\"c\",\"prompt\":null}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o - > $T/b.bin");
    assert_tokens("b.bin", "<|endoftext|>ab<|endoftext|><|endoftext|>c");
    put("b.jsonl", "{\"body\":\"ab\"}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.bin --text-field body");
    assert_tokens("b.bin", "<|endoftext|>ab");
    put("a.txt", "");
    refused(1, "data/make_shard -i $T/a.txt -o $T/x.shard", "a.txt: is empty");
    run(0, "data/make_shard -i $T/a.txt -o $T/a.bin --kind text");
    assert_tokens("a.bin", "");
    assert_holds(said, "a.bin: is empty");
    files_put(files_path("a.txt"), "ok\nb\xFFx", 6);
    refused(1, "data/make_shard -i $T/a.txt -o $T/x.shard", "a.txt: line 2: byte 5 of the file is not UTF-8");
    run(0, "data/make_shard -i $T/a.txt -o $T/a.bin --skip-bad");
    assert_holds(said, "invalid lines skipped: 1 ");
    refused(1, "data/make_shard -i $T/a.txt -o $T/x.shard --kind chat", "line 1: is not JSON");
    put("a.txt", "{not JSON}\n");
    refused(1, "data/make_shard -i $T/a.txt -o $T/x.shard", "a.txt: line 1: is not JSON at byte 4");
}

/* ---- splits ---------------------------------------------------------------------------------------------------- */

static bool holds_prompt(const Shard *s, const char *text) {
    Error e;
    Record r = {0};
    bool found = false;
    for (int64_t i = 0; i < s->count && !found; i++) found = shard_record(s, i, &r, &e) && !strcmp(r.text, text);
    record_free(&r);
    return found;
}

static void test_split(void **state) {
    (void)state;
    Error e;
    Record r = {0};
    TextBuffer lines = {0};
    for (int i = 0; i < 1200; i++) text_format(&lines, "{\"prompt\":\"p%d\",\"answer\":\"%d\"}\n", i % 400, i);
    put("a.jsonl", lines.text);
    text_free(&lines);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --val-fraction 0.25 --val-output $T/v.shard");
    Shard a = {0}, v = {0};
    assert_true(shard_open(&a, files_path("a.shard"), &e) && shard_open(&v, files_path("v.shard"), &e));
    assert_int_equal(a.count + v.count, 1200);
    assert_int_equal(v.count % 3, 0); /* the three records of a prompt stay in one split */
    assert_true(v.count > 200 && v.count < 400);
    for (int64_t i = 0; i < v.count; i++) {
        assert_true(shard_record(&v, i, &r, &e));
        assert_false(holds_prompt(&a, r.text));
    }
    record_free(&r);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/b.shard --val-fraction 0.25 --val-output $T/w.shard");
    size_t n;
    uint8_t *same = files_get(files_path("v.shard"), &n);
    files_assert_content(files_path("w.shard"), same, n);
    free(same);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/b.shard --val-fraction 0.25 --val-output $T/w.shard --seed 1");
    Shard w;
    assert_true(shard_open(&w, files_path("w.shard"), &e));
    assert_true(w.count != v.count || w.total_tokens != v.total_tokens);
    shard_close(&a);
    shard_close(&v);
    shard_close(&w);
    put("a.jsonl", "{\"prompt\":\"p\",\"answer\":\"1\"}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --val-fraction 0.000001 --val-output $T/v.shard");
    assert_holds(said, "v.shard: is empty");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --val-fraction 0.5", "requires --val-output");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --val-output $T/v.shard", "requires --val-fraction");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --val-fraction 0.5 --val-output $T/x.shard",
            "is the same file");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --val-fraction 0.5 --val-output $T/./x.shard",
            "is the same file");
    refused(2, "data/make_shard -i $T/a.jsonl -o - --val-fraction 0.5 --val-output -", "is the same file");
    refused(2, "data/make_shard -i $T/v.shard -i $T/a.jsonl -o $T/./a.jsonl", "a.jsonl; give each its own path");
}

/* ---- bad input ------------------------------------------------------------------------------------------------- */

static void test_bad_lines(void **state) {
    (void)state;
    const char *good = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
    const struct {
        const char *line, *message;
    } cases[] = {
        {"{\"prompt\":\"a\",\"completion\":\"b\xFFz\"}",
         "line 2: field 'completion': byte 30 of the line is not UTF-8"},
        {"{\"prompt\":\"a\",\"completion\":\"b\xE2\x82\"}", "field 'completion': byte 30 of the line is not UTF-8"},
        {"{\"pro\x80mpt\":\"a\"}", "line 2: byte 6 of the line is not UTF-8"},
        {"\xC0\x80", "line 2: byte 1 of the line is not UTF-8"},
        {"{\"prompt\":\"a\",", "line 2: is not JSON at byte"},
        {"{\"prompt\":\"a\"} x", "line 2: is not JSON at byte"},
        {"{\"prompt\":\"\\ud800\"}", "line 2: is not JSON at byte"},
        {"[1,2]", "line 2: is not a JSON object"},
        {"7", "line 2: is not JSON"},
        {"{\"prompt\":\"a\",\"prompt\":\"b\"}", "line 2: byte"},
        {"{\"prompt\":\"a\"}",
         "line 2: is a row of kind prompt (it has the fields prompt), but the first row is of kind chat"},
        {"{\"prompt\":7,\"completion\":\"b\"}", "line 2: field 'prompt': is a number, expected a string"},
        {"{\"prompt\":\"a\",\"completion\":null}", "line 2: is a row of kind prompt"},
        {"{\"prompt\":\"a\\u0000\",\"completion\":\"b\"}", "line 2: field 'prompt': contains the character U+0000"},
        {"{\"prompt\":[],\"completion\":\"b\"}", "line 2: field 'prompt': is an empty list"},
        {"{\"prompt\":[{\"content\":\"a\"}],\"completion\":\"b\"}",
         "line 2: field 'prompt[0]': has no string in 'role'"},
        {"{\"prompt\":[7],\"completion\":\"b\"}", "field 'prompt': message 0 is a number, expected {role, content}"},
        {"{\"prompt\":[{\"role\":\"user\"}],\"completion\":\"b\"}", "line 2: field 'prompt[0].content': is absent"},
        {"{\"prompt\":[{\"role\":\"u s\",\"content\":\"a\"}],\"completion\":\"b\"}",
         "line 2: chat template: has no section"},
        {"{\"prompt\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}],\"completion\":\"b\"}",
         "part 0 is of type 'image'"},
        {"{\"messages\":\"a\"}", "line 2: field 'messages': is a string, expected a list of messages"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        TextBuffer text = {0};
        text_format(&text, "%s%s\n%s", good, cases[i].line, good);
        files_put(files_path("a.jsonl"), text.text, text.length);
        refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --val-fraction 0.5 --val-output $T/y.shard",
                cases[i].message);
        run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --skip-bad");
        assert_holds(said, "warning: invalid lines skipped: 1 (first: ");
        assert_holds(said, cases[i].message);
        Shard s = open_shard("a.shard", RECORD_CHAT, 2);
        shard_close(&s);
        text_free(&text);
    }
    put("a.jsonl", "{\"question\":\"a\",\"reply\":\"b\"}\n");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard",
            "has the fields question, reply; expected messages, prompt");
    put("a.jsonl", "{}\n");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard", "of an empty object");
    put("a.jsonl", "{x}\n");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --skip-bad", "contains no record");
}

static void test_bad_files_and_options(void **state) {
    (void)state;
    put("a.jsonl", "{\"prompt\":\"a\",\"completion\":\"b\"}\n");
    refused(2, "data/make_shard -i $T/a.jsonl", "-o/--output is required");
    refused(2, "data/make_shard $T/a.jsonl -o $T/x.shard", "give inputs with -i");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --kind story", "'story' is not one of");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --max-tokens -1", "out of range");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --nonsense", "unknown");
    refused(1, "data/make_shard -i $T/none -o $T/x.shard", "none: cannot open: No such file");
    refused(1, "data/make_shard -i $T -o $T/x.shard", "is a directory");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/no/x.shard", "cannot create a temporary file");
    refused(1, "data/make_shard -i $T/a.jsonl -o /dev/full", "No space left");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --val-fraction 0.5 --val-output /dev/full",
            "No space left");
    refused(1, "data/make_shard -i $T/a.jsonl -o /dev/full --val-fraction 0.5 --val-output $T/y.shard",
            "No space left");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --tokenizer $T/none", "no such tokenizer");
    refused(1, "data/make_shard -i $T/a.jsonl -i $T/none -o $T/x.shard", "none: cannot open");
    run(0, "data/make_shard --help");
    assert_holds(out, "--answer-after TEXT");
    assert_string_equal(said, "");
    run(0, "data/show --help");
    assert_holds(out, "--tokens");
}

/* Ended by a signal while it waits for input: no file remains. */
static void test_signal(void **state) {
    (void)state;
    int ends[2];
    put("x.shard", "earlier");
    const int before = files_count();
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    if (!child) {
        dup2(ends[0], 0);
        close(ends[0]);
        close(ends[1]);
        execl("data/make_shard", "make_shard", "-i", "-", "-o", files_path("x.shard"), (char *)NULL);
        _exit(127);
    }
    close(ends[0]);
    const char *line = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
    assert_int_equal(write(ends[1], line, strlen(line)), strlen(line));
    for (int i = 0; i < 6000 && files_count() == before; i++) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    assert_int_equal(files_count(), before + 1); /* the temporary file */
    kill(child, SIGTERM);
    int status;
    waitpid(child, &status, 0);
    close(ends[1]);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGTERM);
    assert_int_equal(files_count(), before);
    files_assert_content(files_path("x.shard"), "earlier", 7);
}

/* ---- JSONL itself ---------------------------------------------------------------------------------------------- */

static void test_jsonl(void **state) {
    (void)state;
    Error e;
    Jsonl j;
    json_t *row;
    TextBuffer long_line = {0};
    text_string(&long_line, "\xEF\xBB\xBF{\"a\":1}\n\n  \t\r\n{\"a\":\"");
    for (int i = 0; i < 100000; i++) text_string(&long_line, "é");
    text_string(&long_line, "\"}\n{\"a\":3}");
    files_put(files_path("a.jsonl"), long_line.text, long_line.length);
    assert_true(jsonl_open(&j, files_path("a.jsonl"), false, &e));
    assert_int_equal(jsonl_peek(&j), '{');
    assert_int_equal(jsonl_next(&j, &row, &e), 1);
    assert_int_equal(json_integer_value(json_object_get(row, "a")), 1);
    assert_int_equal(jsonl_next(&j, &row, &e), 1);
    assert_int_equal(j.line, 4);
    assert_int_equal(json_string_length(json_object_get(row, "a")), 200000);
    assert_int_equal(jsonl_next(&j, &row, &e), 1);
    assert_int_equal(json_integer_value(json_object_get(row, "a")), 3);
    assert_int_equal(jsonl_next(&j, &row, &e), 0);
    assert_int_equal(jsonl_next(&j, &row, &e), 0);
    jsonl_close(&j);
    for (int skip = 0; skip < 2; skip++) {
        assert_true(jsonl_open(&j, files_path("a.jsonl"), skip, &e));
        j.limit = 200000;
        assert_int_equal(jsonl_next(&j, &row, &e), 1);
        assert_int_equal(jsonl_next(&j, &row, &e), skip ? 1 : -1);
        if (skip) {
            assert_int_equal(json_integer_value(json_object_get(row, "a")), 3);
            assert_int_equal(j.skipped, 1);
            files_assert_error(&j.first, "line 4: is longer than 200000 bytes");
        } else files_assert_error(&e, "line 4: is longer than 200000 bytes");
        jsonl_close(&j);
    }
    text_free(&long_line);
}

/* ---- show ------------------------------------------------------------------------------------------------------ */

static void test_show(void **state) {
    (void)state;
    put("a.jsonl", "{\"prompt\":\"q\\u001b[31m\",\"completion\":\"a\"}\n{\"prompt\":\"r\",\"completion\":\"b\"}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard.zst");
    run(0, "data/show $T/a.shard.zst");
    assert_holds(out, "record shard, kind chat\nrecords: 2, tokens: 11, vocabulary: 260 (2 bytes per token)\n");
    assert_holds(out, "chat template: plain; an assistant's turn ends with token 256 <|endoftext|>\n");
    assert_holds(out, "-- record 0: 8 tokens, 2 of them trained on\nq\\x1b[31m⟦a<|endoftext|>⟧\n");
    assert_holds(out, "-- record 1: 3 tokens, 2 of them trained on\nr⟦b<|endoftext|>⟧\n");
    assert_holds(out,
                 "trained on: 4 of 11 tokens, 36.4 %\nempty masks: 0; last trained token is not the stop token: 0\n");
    assert_null(strchr(out, 033));
    run(0, "data/show --records 1 --start 1 --no-stats --color always - < $T/a.shard.zst");
    assert_holds(
        out,
        "\033[1m-- record 1: 3 tokens, 2 of them trained on\033[0m\nr\033[32mb\033[0m\033[32m<|endoftext|>\033[0m\n");
    assert_null(strstr(out, "record 0"));
    assert_null(strstr(out, "trained on:"));
    run(0, "data/show --records 1 --tokens $T/a.shard.zst");
    assert_holds(out, "     1      27   0 \"\\x1b\"\n");
    assert_holds(out, "     7     256   1 \"<|endoftext|>\"\n");
    run(0, "data/show --all --json $T/a.shard.zst");
    json_error_t bad;
    json_t *row = json_loads(out, JSON_DISABLE_EOF_CHECK, &bad);
    assert_non_null(row);
    assert_string_equal(json_string_value(json_object_get(row, "text")), "q\033[31ma<|endoftext|>");
    assert_int_equal(json_array_size(json_object_get(row, "tokens")), 8);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(row, "mask"), 6)), 1);
    json_decref(row);

    put("b.jsonl", "{\"prompt\":\"q\",\"answer\":\"7\",\"task\":\"add\",\"n\":1}\n{\"prompt\":\"q\"}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard && data/show $T/b.shard");
    assert_holds(out, "-- record 0: prompt of 1 tokens\nq\ntask: add\nanswer: 7\nfields: {\"n\":1}\n");
    assert_holds(out, "tasks: add 1 (none) 1\nwith an answer: 1\n");
    run(0, "data/show --json --records 1 $T/b.shard");
    assert_string_equal(out,
                        "{\"prompt\":\"q\",\"task\":\"add\",\"answer\":\"7\",\"fields\":{\"n\":1},\"tokens\":[113]}\n");
    put("b.jsonl", "{\"prompt\":\"q\",\"n\":1,\"note\":\"a\\u0000b\"}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard && data/show --json $T/b.shard");
    assert_holds(out, "\"fields\":{\"n\":1,\"note\":\"a\\u0000b\"}");

    put("b.jsonl", "{\"prompt\":\"q\",\"chosen\":\"yes\",\"rejected\":\"n\"}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard && data/show $T/b.shard");
    assert_holds(out,
                 "prompt (1 tokens):\nq\nchosen (4 tokens):\nyes<|endoftext|>\nrejected (2 tokens):\nn<|endoftext|>\n");
    assert_holds(out, "chosen is longer than rejected in 100.0 %");
    run(0, "data/show --json $T/b.shard");
    assert_holds(out, "\"chosen\":\"yes<|endoftext|>\"");

    put("b.jsonl", "{\"prompt\":\"q\",\"completions\":[\"a\",\"b\"],\"labels\":[true,false]}\n");
    run(0, "data/make_shard -i $T/b.jsonl -o $T/b.shard && data/show $T/b.shard");
    assert_holds(out, "solution of 4 in 2 steps\nqa\n⟦1⟧b\n⟦0⟧\n");
    assert_holds(out, "labels: 1 1 0 1\nsteps: 2.0 per record\n");
    run(0, "data/show --json $T/b.shard");
    assert_holds(out, "\"labels\":[0,0,2,0,1]");

    put("c.txt", "one\ntwo\n");
    run(0, "data/make_shard -i $T/c.txt -o $T/c.bin --separator '\\n' && data/show $T/c.bin");
    assert_holds(
        out,
        "token shard\ntokens: 10, highest id: 256, vocabulary: 260, documents begin with token 256\ntokenizer: none");
    run(0, "data/show --tokenizer bytes $T/c.bin");
    assert_holds(out, "-- document 1: 5 tokens\n<|endoftext|>two\n");
    assert_holds(out, "-- all 2 documents\n");
    run(0, "data/show --tokenizer bytes --json --all $T/c.bin");
    assert_holds(out, "{\"text\":\"<|endoftext|>one\\n\",\"tokens\":[256,111,110,101,10]}\n");
}

static void test_show_checkpoint(void **state) {
    (void)state;
    Error e;
    CheckpointWriter w;
    ModelConfig g = gpt2_config(2, 2, 8, 260, 16);
    const size_t n = gpt2_file_elements(&g);
    float *weights = xcalloc(n, sizeof *weights);
    weights[5] = 3;
    weights[n - 1] = INFINITY;
    void *blob = NULL;
    size_t blob_bytes = 0;
    assert_true(tokenizer_store(&bytes, &blob, &blob_bytes, &e));
    const char *lineage = "{\"stage\":\"sft\"}";
    assert_true(checkpoint_create(&w, files_path("m.bin"), &g, false, &e) &&
                checkpoint_put_weights(&w, weights, n, &e));
    assert_true(checkpoint_begin_section(&w, "TOKN", blob_bytes, &e) && checkpoint_put(&w, blob, blob_bytes, &e));
    assert_true(checkpoint_begin_section(&w, "CHAT", 6, &e) && checkpoint_put(&w, "chatml", 6, &e));
    assert_true(checkpoint_begin_section(&w, "LINE", strlen(lineage), &e) &&
                checkpoint_put(&w, lineage, strlen(lineage), &e));
    assert_true(checkpoint_commit(&w, &e));
    free(blob);
    free(weights);
    run(0, "data/show --tensors $T/m.bin");
    assert_holds(
        out,
        "layers 2, width 8, heads 2 of 4 channels (keys and values 2), hidden 32, context 16, vocabulary 260 (padded 384)");
    assert_holds(out, "wte           1 x    384 x     8   root mean square 0.05413    largest 3\n");
    assert_holds(out, "(float32); not finite: 1\n");
    assert_holds(out, "section TOKN");
    assert_holds(out, "chat template: chatml; an assistant's turn ends with token 258 <|im_end|>\n");
    assert_holds(out, "lineage: {\"stage\":\"sft\"}\n");
    run(0, "data/show - < $T/m.bin");
    assert_holds(out, "section LINE: 15 bytes");
    refused(2, "data/show --json $T/m.bin", "a checkpoint has no records");
    run(0, "head -c 5000 $T/m.bin > $T/cut.bin");
    run(1, "data/show $T/cut.bin");
    assert_holds(said, "parameter data ends at byte 5000");
}

static void test_show_bad(void **state) {
    (void)state;
    refused(2, "data/show", "a FILE argument is required");
    refused(2, "data/show a b", "expected one FILE argument, got several");
    refused(1, "data/show $T/none", "none: cannot open");
    put("bad", "abc");
    refused(1, "data/show $T/bad", "bad: this is text; make a shard of it");
    put("bad", "abcdefgh");
    refused(1, "data/show $T/bad",
            "expected a record shard, a token shard, a model, a training state, a teacher's table or a corpus");
    refused(1, "printf abcdefgh | data/show -", "standard input: this is text");
    put("a.jsonl", "{\"prompt\":\"q\",\"completion\":\"a\"}\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
    refused(1, "data/show --start 2 $T/a.shard", "--start is 2, expected at most 1, the number of records");
    refused(1, "data/show --tokenizer $T/none $T/a.shard", "no such tokenizer");
    run(0, "head -c 1100 $T/a.shard > $T/cut.shard");
    refused(1, "data/show $T/cut.shard", "cut.shard");
    run(1, "data/show $T/a.shard > /dev/full");
    assert_holds(said, "cannot write");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_jsonl),
        cmocka_unit_test(test_chat),
        cmocka_unit_test(test_chat_limits),
        cmocka_unit_test(test_chat_warnings),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_preferences),
        cmocka_unit_test(test_rankings),
        cmocka_unit_test(test_gold_answers),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_unpaired),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_bad_files_and_options),
        cmocka_unit_test(test_signal),
        cmocka_unit_test(test_show),
        cmocka_unit_test(test_show_checkpoint),
        cmocka_unit_test(test_show_bad),
    };
    return cmocka_run_group_tests_name("data", tests, setup, teardown);
}
