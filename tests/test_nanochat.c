/* test_nanochat.c - the chat template nanochat and the tool format python-tokens: records of make_shard against
 * render_conversation() of nanochat, and completions against its Engine.generate() (golden/nanochat.json,
 * golden/nanochat.jsonl, written by dev/golden/golden_nanochat.py); refusals; runs of the programs.
 *
 * The models are made here. Needs ./train_sft, ./train_grpo, ./train_ppo, ./generate, ./evaluate, data/make_shard and
 * data/make_tasks. */
#include "../llmc/base/error.h"           /* Error */
#include "../llmc/model/model_text.h"     /* ModelText, model_text_close */
#include "../llmc/records/shard.h"        /* shard_close, RECORD_CHAT, Shard, RECORD_PREFERENCE, ... */
#include "../llmc/rollout/rollout.h"      /* Completion, completion_free */
#include "../llmc/rollout/trajectory.h"   /* STOP_COMPLETED */
#include "../llmc/text/chat.h"            /* chat_stop_token, chat_template_parse */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open */
#include "../llmc/tools/tool_format.h"    /* TOOL_PYTHON_TOKENS */
#include "cpu_device.h"                   /* close_device, open_device_one_thread */
#include "files.h"                        /* text_of, files_path, files_directory, files_setup, ... */
#include "rows.h"                         /* rows_unread */
#include "scripted.h"                     /* scripted_id, Scripted, assert_completion, scripted_close, ... */
#include "shards.h"                       /* open_shard, assert_record */
#include "shell.h"                        /* run, assert_holds, out, put, ... */

enum { LINES_MAX = 64, NEW = 100 };

/* The lines of the golden file that have this field. */
static int golden_lines(const char *field, json_t *line[LINES_MAX]) {
    char *text = text_of("tests/golden/nanochat.jsonl"), *rest = text;
    int count = 0;
    for (char *at; (at = strsep(&rest, "\n")) && *at;) {
        json_t *value = json_loads(at, 0, NULL);
        assert_non_null(value);
        if (json_object_get(value, field)) {
            assert_true(count < LINES_MAX);
            line[count++] = value;
        } else json_decref(value);
    }
    free(text);
    assert_true(count > 0);
    return count;
}

/* ---- conversations --------------------------------------------------------------------------------------------- */

static void test_records(void **state) {
    (void)state;
    json_t *line[LINES_MAX];
    const int count = golden_lines("messages", line);
    Error e;
    run(0, "grep '\"messages\"' tests/golden/nanochat.jsonl | sed 's/, \"ids\".*/}/' >$T/rows.jsonl");
    run(0,
        "data/make_shard --kind chat --template nanochat -t tests/golden/nanochat.json -i $T/rows.jsonl -o $T/x.shard");
    Shard s = open_shard("x.shard", RECORD_CHAT, count);
    Record r = {0};
    for (int i = 0; i < count; i++) {
        const json_t *ids = json_object_get(line[i], "ids"), *mask = json_object_get(line[i], "mask");
        assert_true(shard_record(&s, i, &r, &e));
        assert_int_equal(r.count, json_array_size(ids));
        for (int32_t k = 0; k < r.count; k++) {
            assert_int_equal(r.tokens[k], scripted_id(ids, (size_t)k));
            assert_int_equal(r.mask[k], scripted_id(mask, (size_t)k));
        }
        json_decref(line[i]);
    }
    record_free(&r);
    shard_close(&s);
}

#define CHAT "data/make_shard --kind chat -i $T/bad.jsonl -o $T/x.shard "
#define CALL "{\"role\":\"assistant\",\"content\":[{\"type\":\"python\",\"text\":\"1+1\"}]"

/* Weights, prompts and preferences with calls; rows that cannot be written. */
static void test_rows(void **state) {
    (void)state;
    put("a.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}," CALL ",\"weight\":0},"
                   "{\"role\":\"user\",\"content\":\"r\"}," CALL "}]}\n");
    run(0, "data/make_shard --kind chat --template nanochat -i $T/a.jsonl -o $T/x.shard");
    Shard s = open_shard("x.shard", RECORD_CHAT, 1);
    assert_record(
        &s, 0,
        "<|bos|><|user_start|>q<|user_end|><|assistant_start|><|python_start|>1+1<|python_end|><|assistant_end|>"
        "<|user_start|>r<|user_end|><|assistant_start|>[<|python_start|>1+1<|python_end|><|assistant_end|>]");
    shard_close(&s);
    run(0, "data/make_shard --kind prompt --template nanochat -i $T/a.jsonl -o $T/x.shard");
    s = open_shard("x.shard", RECORD_PROMPT, 1);
    assert_record(
        &s, 0,
        "<|bos|><|user_start|>q<|user_end|><|assistant_start|><|python_start|>1+1<|python_end|><|assistant_end|>"
        "<|user_start|>r<|user_end|><|assistant_start|><|python_start|>1+1<|python_end|>");
    shard_close(&s);
    put("a.jsonl", "{\"prompt\":\"q\",\"chosen\":[" CALL "}],\"rejected\":\"2\"}\n");
    run(0, "data/make_shard --kind preference --template nanochat -i $T/a.jsonl -o $T/x.shard");
    s = open_shard("x.shard", RECORD_PREFERENCE, 1);
    assert_record(
        &s, 0,
        "<|bos|><|user_start|>q<|user_end|><|assistant_start|>|<|python_start|>1+1<|python_end|><|assistant_end|>"
        "|2<|assistant_end|>");
    shard_close(&s);
    /* a template that has results but no calls */
    put("a.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":["
                   "{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"python_output\",\"text\":\"2\"},\"b\"]}]}\n");
    run(0, "data/make_shard --kind chat -i $T/a.jsonl -o $T/x.shard "
           "--template '{user}{content}{assistant}{content}<|end|>{python_output}<|out|>{content}<|/out|>'");
    s = open_shard("x.shard", RECORD_CHAT, 1);
    assert_record(&s, 0, "q[a]<|out|>2<|/out|>[b<|end|>]");
    shard_close(&s);
    static const char *const bad[][3] = {
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}," CALL "}]}", "--template chatml",
         "line 1: field 'messages[1].content': part 0 is of type python, for which this chat template has no section "
         "{python}; the template nanochat has one"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"python\",\"text\":\"1\"}]}]}",
         "--template nanochat", "part 0 is of type python, which only the assistant's messages have"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":[{\"type\":\"c\","
         "\"text\":\"1\"}]}]}",
         "--template nanochat", "part 0 is of type 'c', expected text, python or python_output"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":[{\"type\":"
         "\"python\"}]}]}",
         "--template nanochat", "field 'messages[1].content'"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}," CALL ",\"reasoning_content\":\"hm\"}]}",
         "--template nanochat", "cannot be written before a content with parts of type python"},
        {"{\"messages\":[{\"role\":\"system\",\"content\":\"q\"}," CALL "}]}", "--template nanochat",
         "the message of role system must be followed by a user's message"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char command[300];
        put("bad.jsonl", bad[i][0]);
        snprintf(command, sizeof command, CHAT "%s", bad[i][1]);
        run(1, command);
        assert_holds(said, bad[i][2]);
    }
}

/* ---- the engine ------------------------------------------------------------------------------------------------ */

/* The tokenizer and the template of a nanochat model. */
static ModelText nanochat_text(void) {
    Error e;
    ModelText t = {.present = true, .has_template = true};
    if (!tokenizer_open(&t.tokenizer, "tests/golden/nanochat.json", &e) ||
        !chat_template_parse(&t.chat, "nanochat", &e))
        fail_msg("%s", e.text);
    t.stop = chat_stop_token(&t.chat, &t.tokenizer);
    return t;
}

/* The tokens that are drawn and forced are those of nanochat's engine; the messages are parts of one content. */
static void test_engine(void **state) {
    (void)state;
    json_t *line[LINES_MAX];
    const int count = golden_lines("script", line);
    const json_t *prompt[LINES_MAX], *script[LINES_MAX];
    Completion out_of[LINES_MAX];
    Scripted s;
    ModelText text = nanochat_text();
    for (int i = 0; i < count; i++) {
        prompt[i] = json_object_get(line[i], "prompt");
        script[i] = json_object_get(line[i], "script");
    }
    scripted_open(&s, &text, 32, NEW);
    assert_int_equal(s.episodes.format.kind, TOOL_PYTHON_TOKENS); /* that of the template */
    scripted_run(&s, prompt, script, count, 1, out_of);
    for (int i = 0; i < count; i++) {
        char what[40];
        snprintf(what, sizeof what, "completion %d", i);
        assert_int_equal(out_of[i].trajectory->stop, STOP_COMPLETED);
        assert_completion(&out_of[i], json_object_get(line[i], "ids"), json_object_get(line[i], "mask"), what);
    }
    char *said_by = json_dumps(out_of[1].trajectory->messages, JSON_COMPACT);
    assert_string_equal(said_by,
                        "[{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"Let me compute \"},"
                        "{\"type\":\"python\",\"text\":\"12*34\"},{\"type\":\"python_output\",\"text\":\"408\"},"
                        "{\"type\":\"text\",\"text\":\"The answer is 408.\"}]}]");
    free(said_by);
    assert_int_equal(out_of[1].trajectory->counts.failed_calls, 0);
    assert_int_equal(out_of[3].trajectory->counts.failed_calls, 1); /* no expression */
    assert_int_equal(out_of[4].trajectory->counts.failed_calls, 1); /* 1/0 */
    assert_int_equal(out_of[6].trajectory->counts.parse_errors, 1); /* an end without a start */
    for (int i = 0; i < count; i++) {
        completion_free(&out_of[i]);
        json_decref(line[i]);
    }
    scripted_close(&s);
    model_text_close(&text);
}

/* ---- runs ------------------------------------------------------------------------------------------------------ */

#define TASKS "./data/make_tasks --task bigmul --digits 2 --template nanochat "
#define GRPO  "./train_grpo -c $T/sft.bin -i $T/tasks.shard -p 4 -G 4 -g 44 -x 1 -o $T/grpo.bin --tools calculator "

/* The part of a line of metrics after a key, as a number. */
static double metric(const char *text, const char *key) {
    const char *at = strstr(text, key);
    if (!at) fail_msg("%s is not in %s", key, text);
    return strtod(at + strlen(key), NULL);
}

/* Demonstrations, every program, a round trip of what was sampled, and refusals. */
static void test_runs(void **state) {
    (void)state;
    run(0, TASKS "--count 500 --format chat -o $T/sft.shard");
    run(0, TASKS "--count 60 --seed 2 -o $T/tasks.shard");
    run(0, TASKS "--count 1 --seed 2 --format chat -o $T/one.shard && ./data/show $T/one.shard");
    assert_holds(out, "<|assistant_start|>");
    assert_holds(out, "<|python_end|>");
    assert_holds(out, "<|output_start|>");
    run(0, "./train_sft --layers 1 --width 64 --heads 2 --context 96 -i $T/sft.shard -x 80 --batch-tokens 1024 -l 5e-3 "
           "-o $T/sft.bin");
    run(0, "./generate -c $T/sft.bin -i $T/tasks.shard --temperature 0 -g 44 --tools calculator -o $T/rows.jsonl");
    char *rows = text_of(files_path("rows.jsonl"));
    assert_holds(rows, "{\"type\":\"python\",\"text\":\"");
    assert_holds(rows, "{\"type\":\"python_output\",\"text\":\"");
    rows_unread(rows);
    free(rows);
    run(0, "./generate -c $T/sft.bin -i $T/tasks.shard --temperature 0 -g 10 --tools calculator");
    assert_true(rows_unread(out) > 0);
    run(0, "./data/make_shard --kind chat --template nanochat -i $T/rows.jsonl -o $T/again.shard");
    run(0, "./data/show --records 1 $T/again.shard");
    assert_holds(out, "<|output_start|>");
    run(0, "./generate -c $T/sft.bin --temperature 0 -g 44 --tools calculator '12*34='");
    assert_holds(out, "<|python_start|>");
    run(0, "printf '12*34=\n56*78=\n/save '$T'/talk.json\n' | ./generate -c $T/sft.bin --chat --temperature 0 -g 30 "
           "--tools calculator");
    assert_holds(out, "<|python_end|><|output_start|>");
    run(0, "./data/make_shard --kind chat --template nanochat -i $T/talk.json -o $T/talk.shard");
    run(0, GRPO "--metrics $T/m.jsonl");
    char *metrics = text_of(files_path("m.jsonl"));
    assert_true(metric(metrics, "\"turns/mean\":") > 1.2);
    assert_true(metric(metrics, "\"sampling/sampling_logp_difference/max\":") < 1e-4);
    free(metrics);
    run(0,
        "./train_ppo -c $T/sft.bin -i $T/tasks.shard -p 4 -g 44 -x 1 -o $T/ppo.bin --tools calculator --reward verify");
    run(0, "./evaluate -c $T/sft.bin -i $T/tasks.shard -g 44 --tools calculator");
    assert_true(metric(out, "\"tool_calls_mean\":") > 0.2);
    run(1, "./generate -c $T/sft.bin -i $T/tasks.shard --tools calculator,python");
    assert_holds(said, "tool format python-tokens: it has one tool, but 2 are given");
    refused_output("x.jsonl", 2, "./generate -c $T/sft.bin --serve 127.0.0.1:0 --tool-format python-tokens",
                   "--tool-format python-tokens: a server reads calls from texts");
    refused_output("x.shard", 2,
                   "./data/make_tasks --task bigmul --format chat --count 9 --tool-format python-tokens -o $T/x.shard",
                   "the tokenizer has no special token <|python_start|>");
}

static int setup(void **state) {
    return files_setup(state) || setenv("T", files_directory, 1) || open_device_one_thread(state);
}

static int teardown(void **state) { return close_device(state) || files_teardown(state); }

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_records), cmocka_unit_test(test_rows),
                                       cmocka_unit_test(test_engine), cmocka_unit_test(test_runs)};
    return cmocka_run_group_tests_name("nanochat", tests, setup, teardown);
}
