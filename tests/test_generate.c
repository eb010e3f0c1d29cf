/* test_generate.c - ./generate as a user runs it: greedy text against an uncached forward pass, prompts from all kinds
 * of files, rewards, templates of prompts, streaming, chat, signals, bad input.
 *
 * The models are made here. Needs ./generate. */
#include "../data/ask.h"            /* ask_open, ask_close, ask_text, Ask */
#include "../llmc/base/error.h"     /* xstrdup, Error, xcalloc */
#include "../llmc/base/jsonl.h"     /* Jsonl */
#include "../llmc/base/text.h"      /* TextBuffer, text_free, text_append, text_clear, ... */
#include "../llmc/cpu/cpu.h"        /* backend_cpu */
#include "../llmc/model/config.h"   /* ModelConfig, gpt2_config */
#include "../llmc/model/model.h"    /* Model, model_free, model_init, model_new */
#include "../llmc/records/shard.h"  /* RECORD_PROMPT, ShardWriter, RECORD_CHAT, Record, ... */
#include "../llmc/text/tokenizer.h" /* tokenizer_decode */
#include "files.h"                  /* files_path, files_assert_error, text_of, files_directory */
#include "models.h"                 /* refused, json_text_of, json_line_of, lines_of, ... */
#include "shell.h"                  /* out, run, said, assert_holds, ... */
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <time.h>

static Model chance; /* random.bin; chat.bin: with ChatML; bare.bin: without a tokenizer */

/* ---- one prompt ------------------------------------------------------------------------------------------------ */

/* Greedy continuation, by a forward pass over the whole text per token. Returns the number of tokens without the stop
 * token. */
static int uncached(const Model *m, int32_t *ids, int n, int most, int32_t stop) {
    const int start = n;
    while (n - start < most && n < m->config.context) {
        float *z = models_logits(m, ids, n);
        const int token = models_argmax(z + (size_t)(n - 1) * MODELS_VOCAB);
        free(z);
        if (token == stop) break;
        ids[n++] = token;
    }
    return n - start;
}

static void greedy_is_an_uncached_forward(void **state) {
    (void)state;
    const char *prompts[] = {"2+3=", "a", "What is the capital of France?",
                             "The quick brown fox jumps over the lazy dog"};
    char command[300];
    for (size_t i = 0; i < 4; i++) {
        int32_t ids[256];
        TextBuffer text = {0};
        const int n = (int)strlen(prompts[i]);
        for (int k = 0; k < n; k++) ids[k] = (unsigned char)prompts[i][k];
        const int got = uncached(&chance, ids, n, 40, MODELS_EOS);
        tokenizer_decode(&models_bytes, ids + n, got, false, &text);
        text_string(&text, "\n");
        snprintf(command, sizeof command, "./generate -c $T/random.bin --temperature 0 -g 40 '%s'", prompts[i]);
        run(0, command);
        assert_string_equal(out, text.text);
        assert_string_equal(said, "");
        text_free(&text);
    }
    /* a prompt that is processed in several pieces and fills the context to its end */
    int32_t ids[320];
    for (int k = 0; k < 300; k++) ids[k] = 'a' + k * k % 23;
    char prompt[301];
    for (int k = 0; k < 300; k++) prompt[k] = (char)ids[k];
    prompt[300] = 0;
    put("long.txt", prompt);
    const int got = uncached(&chance, ids, 300, 100, MODELS_EOS);
    assert_int_equal(got, 20);
    run(0, "./generate -c $T/random.bin --temperature 0 --verbose - < $T/long.txt");
    assert_int_equal(strlen(out), 21);
    for (int k = 0; k < 20; k++) assert_int_equal((unsigned char)out[k], ids[300 + k]);
    assert_holds(said, "300 prompt tokens, 20 new tokens");
}

/* Reads the tokens of an output line and returns their number. */
static int tokens_of(const json_t *row, int32_t *ids) {
    const json_t *list = json_object_get(row, "tokens");
    for (size_t i = 0; i < json_array_size(list); i++) ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return (int)json_array_size(list);
}

/* The sum of log softmax(logits / temperature) over the tokens, in double, which logprob must equal. */
static void logprobs_are_those_of_a_forward_pass(void **state) {
    (void)state;
    const double temperatures[] = {1, 0.5, 3, 0};
    for (int i = 0; i < 4; i++) {
        char command[200];
        int32_t ids[64] = {'2', '+', '3', '='};
        double want = 0;
        snprintf(command, sizeof command,
                 "./generate -c $T/random.bin --json --temperature %g -g 30 2+3=", temperatures[i]);
        run(0, command);
        json_t *row = json_line_of(out, 0);
        assert_string_equal(json_text_of(row, "prompt"), "2+3=");
        const int n = tokens_of(row, ids + 4);
        assert_true(n > 0);
        float *z = models_logits(&chance, ids, 4 + n);
        for (int k = 0; k < n; k++)
            want -= models_nats(z + (size_t)(3 + k) * MODELS_VOCAB, temperatures[i] ? temperatures[i] : 1, ids[4 + k]);
        assert_near(json_number_of(row, "logprob"), want, 1e-3);
        free(z), json_decref(row);
    }
}

static void one_text_whatever_the_way(void **state) {
    (void)state;
    /* the stream, the batch, any number of slots, argv, standard input and a file draw the same samples */
    run(0, "./generate -c $T/random.bin --temperature 1 --seed 3 -g 25 hello world");
    char *streamed = xstrdup(out);
    run(0, "echo hello world | ./generate -c $T/random.bin --temperature 1 --seed 3 -g 25 -");
    assert_string_equal(out, streamed);
    run(0, "./generate -c - --temperature 1 --seed 3 -g 25 'hello world' < $T/random.bin");
    assert_string_equal(out, streamed);
    run(0, "./generate -c $T/random.bin --echo --temperature 1 --seed 3 -g 25 hello world");
    assert_holds(out, "hello world");
    assert_string_equal(out + 11, streamed);
    run(0, "./generate -c $T/random.bin --temperature 1 --seed 3 -g 25 --json hello world");
    json_t *row = json_line_of(out, 0);
    streamed[strlen(streamed) - 1] = 0;
    assert_string_equal(json_text_of(row, "completion"), streamed);
    assert_null(json_object_get(row, "sample"));
    json_decref(row), free(streamed);
    run(0, "./generate -c $T/random.bin --temperature 1 --seed 4 -g 25 --json hello world");
    char *other = xstrdup(out);
    run(0, "./generate -c $T/random.bin --temperature 1 --seed 3 -g 25 --json hello world");
    assert_string_not_equal(out, other);
    free(other);

    put("three.txt", "hello world\r\n\nsecond\nthird");
    run(0, "./generate -c $T/random.bin --temperature 1 --seed 3 -g 25 -i $T/three.txt --num-samples 5 --slots 1");
    char *one = xstrdup(out);
    assert_int_equal(lines_of(one), 15);
    run(0, "./generate -c $T/random.bin --temperature 1 --seed 3 -g 25 -i - --num-samples 5 --slots 7 < $T/three.txt");
    json_t *a, *b;
    for (int i = 0; i < 15; i++) {
        const char *prompts[] = {"hello world", "second", "third"};
        a = json_line_of(one, i);
        b = json_line_of(out, i);
        assert_string_equal(json_text_of(a, "prompt"), prompts[i / 5]);
        assert_int_equal(json_integer_value(json_object_get(a, "sample")), i % 5);
        assert_true(json_equal(json_object_get(a, "tokens"), json_object_get(b, "tokens")));
        json_decref(a), json_decref(b);
    }
    free(one);
    assert_holds(said, "3 prompts, 15 completions");
    /* sampling options have an effect, with the cache of one sequence and in a batch */
    const char *changes[] = {"--top-k 3", "--top-p 0.3", "--min-p 0.3", "--repetition-penalty 3", "--temperature 4"};
    for (int i = 0; i < 5; i++) {
        char command[300];
        run(0, "./generate -c $T/random.bin --temperature 1 -g 25 abc");
        char *plain = xstrdup(out);
        snprintf(command, sizeof command, "./generate -c $T/random.bin --temperature 1 -g 25 %s abc", changes[i]);
        run(0, command);
        assert_string_not_equal(out, plain);
        free(plain);
        plain = xstrdup(out);
        plain[strlen(plain) - 1] = 0;
        snprintf(command, sizeof command, "./generate -c $T/random.bin --temperature 1 -g 25 --json %s abc",
                 changes[i]);
        run(0, command);
        row = json_line_of(out, 0);
        assert_string_equal(json_text_of(row, "completion"), plain);
        free(plain), json_decref(row);
    }
}

/* A model that generates these bytes after a prompt of `prompt` tokens, then `end`. */
static void save_script(const char *name, int context, int prompt, const char *text, int32_t end,
                        const char *template) {
    int32_t *script = (int32_t *)xcalloc((size_t)context, sizeof *script);
    const int n = (int)strlen(text);
    for (int i = 0; i < n; i++) script[prompt - 1 + i] = (unsigned char)text[i];
    script[prompt - 1 + n] = end;
    Model m = models_scripted(context, script, NULL, prompt + n);
    models_save(&m, name, false, template);
    model_free(&m), free(script);
}

/* Each character is written whole, by one write; bytes outside any character become U+FFFD. */
static void streaming_is_utf8(void **state) {
    (void)state;
    const char *const characters[] = {
        "a", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xEF\xBF\xBD", "b", "\xEF\xBF\xBD",
        "\n"}; /* the seventh is \xE2\x82, a truncated character */
    save_script("utf8.bin", 64, 2,
                "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xFF"
                "b\xE2\x82",
                MODELS_EOS, NULL);
    int ends[2];
    assert_int_equal(pipe2(ends, O_DIRECT), 0); /* packet mode: each read returns exactly one write */
    const pid_t child = fork();
    if (!child) {
        char model[600];
        snprintf(model, sizeof model, "%s/utf8.bin", files_directory);
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]), close(ends[1]);
        execl("./generate", "generate", "-c", model, "--temperature", "0", "xy", (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    char packet[512];
    for (int i = 0; i < 6; i++) {
        const ssize_t n = read(ends[0], packet, sizeof packet);
        assert_int_equal(n, strlen(characters[i]));
        assert_memory_equal(packet, characters[i], (size_t)n);
    }
    TextBuffer rest = {0};
    for (ssize_t n; (n = read(ends[0], packet, sizeof packet)) > 0;) text_append(&rest, packet, (size_t)n);
    assert_string_equal(rest.text, "\xEF\xBF\xBD\xEF\xBF\xBD\n"); /* one for each of the two bytes */
    text_free(&rest), close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status) && !WEXITSTATUS(status));
    run(0, "./generate -c $T/utf8.bin --temperature 0 --json xy");
    json_t *row = json_line_of(out, 0);
    assert_string_equal(json_text_of(row, "completion"), "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xEF\xBF\xBD"
                                                         "b\xEF\xBF\xBD\xEF\xBF\xBD");
    json_decref(row);
}

static void stops(void **state) {
    (void)state;
    save_script("talk.bin", 64, 2, "one. two; three", MODELS_EOS, NULL);
    run(0, "./generate -c $T/talk.bin --temperature 0 xy");
    assert_string_equal(out, "one. two; three\n");
    run(0, "./generate -c $T/talk.bin --temperature 0 --stop ';' xy");
    assert_string_equal(out, "one. two\n");
    run(0, "./generate -c $T/talk.bin --temperature 0 --stop ';' --stop . xy");
    assert_string_equal(out, "one\n");
    run(0, "./generate -c $T/talk.bin --temperature 0 -g 5 xy");
    assert_string_equal(out, "one. \n");
    run(0, "./generate -c $T/talk.bin --temperature 0 -g 5 --json xy");
    json_t *row = json_line_of(out, 0);
    assert_true(json_is_false(json_object_get(row, "finished")));
    json_decref(row);
    run(0, "./generate -c $T/talk.bin --temperature 0 --json xy");
    row = json_line_of(out, 0);
    int32_t ids[64];
    assert_true(json_is_true(json_object_get(row, "finished")));
    assert_int_equal(tokens_of(row, ids), 16);
    assert_int_equal(ids[15], MODELS_EOS);
    json_decref(row);
    /* the end of an assistant's turn, and a special token given by name */
    save_script("end.bin", 64, 3, "good", MODELS_IM_END, "{any}<|im_start|>{content}<|im_end|>");
    run(0, "./generate -c $T/end.bin --temperature 0 --raw 123");
    assert_string_equal(out, "good\n");
    save_script("end.bin", 64, 3, "good", MODELS_IM_END, NULL);
    run(0, "./generate -c $T/end.bin --temperature 0 --stop '<|im_end|>' 123");
    assert_string_equal(out, "good\n");
    /* a stop that is plain text of the template is not part of the answer */
    save_script("line.bin", 64, 6, "good", '\n', "{user}Q: {content}\\n{assistant}{content}\\n");
    run(0, "./generate -c $T/line.bin --temperature 0 12");
    assert_string_equal(out, "good\n");
}

static void raw_prompts(void **state) {
    (void)state;
    /* "<|im_start|>" is one token in a raw prompt and twelve in a user's message; no start-of-document token is
     * added */
    save_script("raw.bin", 64, 1, "yes", MODELS_EOS, NULL);
    run(0, "./generate -c $T/raw.bin --temperature 0 --raw '<|im_start|>'");
    assert_string_equal(out, "yes\n");
    run(0, "./generate -c $T/raw.bin --temperature 0 --raw ''");
    assert_string_equal(out, "yes\n");
    run(0, "./generate -c $T/raw.bin --temperature 0 ''");
    assert_string_equal(out, "yes\n");
    run(0, "./generate -c $T/raw.bin --temperature 0 '<|im_start|>'");
    assert_string_equal(out, "\n");
    /* the model's template, a named one, a model without a tokenizer */
    run(0, "./generate -c $T/random.bin --temperature 0 -g 20 --raw "
           "'<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'");
    char *want = xstrdup(out);
    run(0, "./generate -c $T/chat.bin --temperature 0 -g 20 hi");
    assert_string_equal(out, want);
    run(0, "./generate -c $T/random.bin --chat-template chatml --temperature 0 -g 20 hi");
    assert_string_equal(out, want);
    run(0, "./generate -c $T/bare.bin --tokenizer bytes --chat-template chatml --temperature 0 -g 20 hi");
    assert_string_equal(out, want);
    free(want);
    run(0, "./generate -c $T/random.bin --temperature 0 -g 20 --raw "
           "'<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'");
    want = xstrdup(out);
    run(0, "./generate -c $T/chat.bin --system Brief. --temperature 0 -g 20 hi");
    assert_string_equal(out, want);
    free(want);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static void prompts_of_all_kinds(void **state) {
    (void)state;
    run(0, "./generate -c $T/chat.bin --temperature 0 -g 20 hi");
    out[strlen(out) - 1] = 0;
    char *want = xstrdup(out);
    put("rows.jsonl",
        "{\"prompt\": \"hi\", \"id\": 7, \"answer\": [1, 2]}\n\n"
        "{\"prompt\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n"
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"yes\"}]}\n"
        "{\"conversations\": [{\"from\": \"human\", \"value\": \"hi\"}]}");
    run(0, "./generate -c $T/chat.bin --temperature 0 -g 20 -i $T/rows.jsonl");
    assert_int_equal(lines_of(out), 4);
    for (int i = 0; i < 4; i++) {
        json_t *row = json_line_of(out, i);
        assert_string_equal(json_text_of(row, "completion"), want);
        if (!i) {
            assert_int_equal(json_integer_value(json_object_get(row, "id")), 7);
            assert_int_equal(json_array_size(json_object_get(row, "answer")), 2);
        }
        json_decref(row);
    }
    run(0, "zstd -q -c $T/rows.jsonl | ./generate -c $T/chat.bin --temperature 0 -g 20 -i - -o $T/rows.out.zst");
    assert_string_equal(out, "");
    run(0, "zstd -q -d -c $T/rows.out.zst");
    assert_int_equal(lines_of(out), 4);

    ShardWriter w = models_shard("tasks.shard", RECORD_PROMPT, "plain");
    models_add_prompt(&w, "2+3=", "add", "5", "{\"level\":2}");
    models_add_prompt(&w, "sort: 3 1", "sort", "1 3", "");
    models_commit(&w);
    run(0, "./generate -c $T/random.bin --temperature 0 -g 20 2+3=");
    out[strlen(out) - 1] = 0;
    free(want);
    want = xstrdup(out);
    const char *const models[] = {"random", "bare"}; /* the shard's tokenizer serves a model without one */
    for (int i = 0; i < 2; i++) {
        char command[200];
        snprintf(command, sizeof command, "./generate -c $T/%s.bin --temperature 0 -g 20 -i $T/tasks.shard", models[i]);
        run(0, command);
        json_t *row = json_line_of(out, 0);
        assert_string_equal(json_text_of(row, "prompt"), "2+3=");
        assert_string_equal(json_text_of(row, "task"), "add");
        assert_string_equal(json_text_of(row, "answer"), "5");
        assert_int_equal(json_integer_value(json_object_get(row, "level")), 2);
        assert_string_equal(json_text_of(row, "completion"), want);
        json_decref(row);
        row = json_line_of(out, 1);
        assert_string_equal(json_text_of(row, "prompt"), "sort: 3 1");
        assert_null(json_object_get(row, "fields"));
        json_decref(row);
    }
    free(want);
}

/* ---- rewards and templates of prompts -------------------------------------------------------------------------- */

/* A model that answers a prompt of four tokens by "4" or "5", each in about half of the samples. */
static void save_guesses(void) {
    int32_t a[] = {'x', 'x', 'x', '4'}, b[] = {'x', 'x', 'x', '5'};
    Model m = models_scripted(16, a, b, 4);
    models_save(&m, "guess.bin", false, "plain");
    model_free(&m);
}

/* right and the rewards of each sample follow from its text; --keep chooses by them. */
static void samples_are_scored(void **state) {
    (void)state;
    save_guesses();
    put("sums.jsonl", "{\"prompt\":\"2+2=\",\"answer\":4,\"task\":\"add\"}\n"
                      "{\"prompt\":\"2+3=\",\"answer\":\"5\",\"task\":\"add\",\"level\":[1]}\n"
                      "{\"prompt\":\"2+9=\",\"answer\":\"11\",\"task\":\"add\"}\n");
    run(0, "./generate -c $T/guess.bin -i $T/sums.jsonl --num-samples 16 --temperature 1 "
           "--reward 'verify:2,regex=/5/:-0.5' -o $T/all.jsonl");
    char *all = text_of(files_path("all.jsonl"));
    assert_int_equal(lines_of(all), 48);
    int right[3] = {0}, first[3][2];
    double sum = 0;
    for (int i = 0; i < 48; i++) {
        json_t *row = json_line_of(all, i), *parts = json_object_get(row, "rewards");
        const char *text = json_text_of(row, "completion");
        const int prompt = i / 16, five = !strcmp(text, "5");
        const bool good = prompt == five && prompt < 2;
        assert_true(five || !strcmp(text, "4"));
        assert_int_equal(json_number_of(row, "index"), prompt);
        assert_int_equal(json_number_of(row, "sample"), i % 16);
        assert_int_equal(json_is_true(json_object_get(row, "right")), good);
        assert_near(json_number_of(row, "reward"), 2 * good - 0.5 * five, 0);
        assert_near(json_number_of(parts, "verify"), good, 0);
        assert_near(json_number_of(parts, "regex"), five, 0);
        sum += 2 * good - 0.5 * five;
        right[prompt] += good;
        if (i % 16 == 0) first[prompt][0] = first[prompt][1] = -1;
        if (first[prompt][five] < 0) first[prompt][five] = i;
        json_decref(row);
    }
    char line[100];
    snprintf(line, sizeof line, "reward %.4f, %.2f %% right\n", sum / 48, 100.0 * (right[0] + right[1]) / 48);
    assert_holds(said, line);
    /* the best of the first prompt is 4, of the second 5, of the third 4, whose text has no 5; the worst are the others */
    for (int i = 0; i < 3; i++) assert_true(first[i][0] >= 0 && first[i][1] >= 0);
    const char *const keep[] = {"best", "worst", "best-worst"};
    for (int k = 0; k < 3; k++) {
        char command[300];
        snprintf(command, sizeof command,
                 "./generate -c $T/guess.bin -i $T/sums.jsonl --num-samples 16 --temperature 1 --keep %s "
                 "--reward 'verify:2,regex=/5/:-0.5'",
                 keep[k]);
        run(0, command);
        assert_int_equal(lines_of(out), k == 2 ? 6 : 3);
        for (int prompt = 0, at = 0; prompt < 3; prompt++) {
            bool written[48] = {false};
            const int best = first[prompt][prompt == 1], worst = first[prompt][prompt != 1];
            if (k != 1) written[best] = true;
            if (k != 0) written[worst] = true;
            for (int i = 16 * prompt; i < 16 * prompt + 16; i++) {
                if (!written[i]) continue;
                json_t *row = json_line_of(out, at++), *same = json_line_of(all, i);
                assert_true(json_equal(row, same));
                json_decref(row), json_decref(same);
            }
        }
    }
    free(all);
}

/* A reward program sees the row; a record without an answer has no reward, and its samples are not kept. */
static void rewards_of_programs(void **state) {
    (void)state;
    put("some.jsonl", "{\"prompt\":\"2+2=\",\"answer\":4,\"task\":\"add\",\"level\":7}\n{\"prompt\":\"2+3=\"}\n");
    run(0,
        "./generate -c $T/guess.bin -i $T/some.jsonl --temperature 0 --reward-cmd 'sed -u -e \"s/.*level.:7.*/7/;t\" -e s/.*/null/'");
    json_t *row = json_line_of(out, 0);
    assert_near(json_number_of(row, "reward"), 7, 0);
    json_decref(row);
    row = json_line_of(out, 1);
    assert_true(json_is_null(json_object_get(row, "reward")) && json_is_null(json_object_get(row, "right")));
    json_decref(row);
    run(0, "./generate -c $T/guess.bin -i $T/some.jsonl --num-samples 4 --reward exact --keep best");
    assert_int_equal(lines_of(out), 1);
    assert_holds(said, "1 of 2 prompts have no answer that the reward can check");
    assert_holds(said, "4 not scored, 1 prompt left out without a scored sample");
    refused(1, "echo '{\"prompt\":\"2+3=\"}' | ./generate -c $T/guess.bin -i - --reward exact",
            "no prompt has an answer");
    refused(1, "echo '{\"prompt\":\"2+3=\",\"task\":\"poem\"}' | ./generate -c $T/guess.bin -i - --reward verify",
            "task 'poem' has no verifier");
}

/* A prompt made by a template is the same as the text written out, whatever the row comes from. */
static void prompts_by_template(void **state) {
    (void)state;
    put("t.txt", "{prompt} is {answer}{{!}} {level.0}\n");
    put("one.jsonl", "{\"prompt\":\"2+3=\",\"answer\":5,\"level\":[\"a\"],\"completion\":\"6\",\"right\":false}\n");
    run(0, "./generate -c $T/chat.bin --temperature 0 -g 9 '2+3= is 5{!} a'");
    out[strlen(out) - 1] = 0;
    char *want = xstrdup(out);
    run(0, "data/make_shard -q --kind prompt -i $T/one.jsonl -o $T/one.shard 2>/dev/null; "
           "for f in one.jsonl one.shard; do ./generate -c $T/chat.bin --temperature 0 -g 9 -i $T/$f "
           "--prompt-template $T/t.txt; done 2>/dev/null");
    for (int i = 0; i < 2; i++) {
        json_t *row = json_line_of(out, i);
        assert_string_equal(json_text_of(row, "prompt"), "2+3=");
        assert_string_equal(json_text_of(row, "completion"), want);
        if (!i) assert_null(json_object_get(row, "right")); /* of the completion that was replaced */
        json_decref(row);
    }
    run(0, "./generate -c $T/chat.bin --temperature 0 -g 9 -i $T/one.jsonl --prompt-template $T/t.txt "
           "--output-field critique");
    json_t *row = json_line_of(out, 0);
    assert_string_equal(json_text_of(row, "completion"), "6");
    assert_true(json_is_false(json_object_get(row, "right")));
    assert_string_equal(json_text_of(row, "critique"), want);
    assert_int_equal(json_array_size(json_object_get(row, "critique_tokens")), 9);
    json_decref(row);
    free(want);
    refused(1, "echo '{\"prompt\":\"a\"}' | ./generate -c $T/chat.bin -i - --prompt-template $T/t.txt",
            "line 1: has no field 'answer'");
    put("bad.txt", "{prompt");
    refused(1, "./generate -c $T/chat.bin -i $T/one.jsonl --prompt-template $T/bad.txt", "a brace is neither");
    put("bad.txt", "text");
    refused(1, "./generate -c $T/chat.bin -i $T/one.jsonl --prompt-template $T/bad.txt", "has no {field}");
    refused(2, "./generate -c $T/chat.bin --prompt-template $T/t.txt hi", "used only with -i");
}

/* The examples of a prompt are different rows of the file, none of them with the prompt itself; all others are drawn equally
 * often. */
static void examples_in_prompts(void **state) {
    (void)state;
    TextBuffer rows = {0};
    for (int i = 0; i < 6; i++) text_format(&rows, "{\"prompt\":\"p%d\",\"completion\":\"c%d\"}\n", i, i);
    put("shots.jsonl", rows.text);
    text_free(&rows);
    put("shot.txt", "Begin. {shot}{prompt}>{completion};{/shot}{prompt}>");
    Ask a;
    Error e;
    assert_true(ask_open(&a, files_path("shot.txt"), files_path("shots.jsonl"), 3, 5, &e));
    json_t *row = json_pack("{s:s}", "prompt", "p2");
    const Jsonl j = {.name = "x", .line = 1};
    TextBuffer text = {0};
    int seen[6] = {0}, firsts[6] = {0};
    for (uint64_t i = 0; i < 300; i++) {
        int x, y, z;
        char end[8];
        assert_true(ask_text(&a, &j, row, i, &text, &e));
        assert_int_equal(sscanf(text.text, "Begin. p%d>c%*d;p%d>c%*d;p%d>c%*d;%7s", &x, &y, &z, end), 4);
        assert_string_equal(end, "p2>");
        assert_true(x != y && y != z && x != z);
        seen[x]++, seen[y]++, seen[z]++, firsts[x]++;
    }
    for (int i = 0; i < 6; i++) {
        if (i == 2) assert_int_equal(seen[i], 0);
        else { /* 180 and 60 are expected; five standard deviations are 42 and 35 */ assert_in_range(seen[i], 138, 222);
            assert_in_range(firsts[i], 25, 95);
        }
    }
    ask_close(&a);
    assert_false(ask_open(&a, files_path("shot.txt"), files_path("shots.jsonl"), 7, 5, &e));
    files_assert_error(&e, "has 6 rows, --num-shots is 7");
    assert_true(ask_open(&a, files_path("shot.txt"), files_path("shots.jsonl"), 6, 5, &e));
    assert_false(ask_text(&a, &j, row, 0, &text, &e));
    files_assert_error(&e, "x: line 1: only 5 rows of ");
    ask_close(&a);
    assert_false(ask_open(&a, files_path("shot.txt"), NULL, 0, 5, &e));
    files_assert_error(&e, "give its examples with --shots");
    json_decref(row), text_free(&text);
    run(0, "./generate -c $T/chat.bin -i $T/shots.jsonl --prompt-template $T/shot.txt --shots $T/shots.jsonl -g 4 "
           "--temperature 0");
    assert_int_equal(lines_of(out), 6);
}

/* An answer is followed by a message made of the row; the model answers the whole conversation. */
static void asks_again(void **state) {
    (void)state;
    put("again.txt", "is {nothing} right?\n");
    put("answered.jsonl",
        "{\"prompt\":\"ab\",\"completion\":\"x{y}\",\"right\":true,\"answer\":\"7\"}\n"
        "{\"messages\":[{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}],"
        "\"prompt\":\"c\",\"completion\":[{\"role\":\"assistant\",\"content\":\"e\"}]}\n");
    put("never.jsonl", "{\"prompt\":\"ab\",\"completion_of\":\"x\"}\n");
    put("again2.txt", "about {prompt}");
    run(0,
        "./generate -c $T/chat.bin -i $T/answered.jsonl --continue-as $T/again2.txt -g 4 --temperature 0 -o $T/again.jsonl && "
        "./generate -c $T/chat.bin -i $T/again.jsonl --continue-as $T/again2.txt -g 4 --temperature 0");
    json_t *row = json_line_of(out, 0), *last = json_line_of(out, 1);
    char *first = text_of(files_path("again.jsonl"));
    json_t *before = json_line_of(first, 0);
    const json_t *m = json_object_get(row, "messages");
    assert_int_equal(json_array_size(m), 5); /* ab, x{y}, about ab, the answer, about ab */
    assert_int_equal(json_array_size(json_object_get(last, "messages")), 6);
    static const char *const roles[] = {"user", "assistant", "user", "assistant", "user"};
    const char *const texts[] = {"ab", "x{y}", "about ab", json_text_of(before, "completion"), "about ab"};
    for (int i = 0; i < 5; i++) {
        assert_string_equal(json_text_of(json_array_get(m, (size_t)i), "role"), roles[i]);
        assert_string_equal(json_text_of(json_array_get(m, (size_t)i), "content"), texts[i]);
    }
    assert_string_equal(json_text_of(row, "answer"), "7");
    assert_null(json_object_get(row, "right"));
    /* the same conversation given as messages has the same answer */
    json_object_del(row, "tokens");
    json_t *plain = json_pack("{sO}", "messages", m);
    char *text = json_dumps(plain, 0), *said_again = xstrdup(json_text_of(row, "completion"));
    put("whole.jsonl", text);
    run(0, "./generate -c $T/chat.bin -i $T/whole.jsonl -g 4 --temperature 0");
    json_t *whole = json_line_of(out, 0);
    assert_string_equal(json_text_of(whole, "completion"), said_again);
    free(text), free(said_again), free(first);
    json_decref(plain), json_decref(whole), json_decref(row), json_decref(last), json_decref(before);
    run(0,
        "./generate -c $T/chat.bin -i $T/answered.jsonl --continue-as $T/again2.txt -g 4 --temperature 0 --output-field x");
    refused(1, "./generate -c $T/chat.bin -i $T/answered.jsonl --continue-as $T/again.txt -o $T/kept", "nothing");
    refused(1, "./generate -c $T/chat.bin -i $T/never.jsonl --continue-as $T/again2.txt -o $T/kept",
            "has no completion to ask about again");
    refused(2, "./generate -c $T/chat.bin -i $T/answered.jsonl --continue-as $T/again2.txt --raw -o $T/kept",
            "--continue-as: needs rows of JSON");
}

/* ---- chat ------------------------------------------------------------------------------------------------------ */

/* Every turn of a chat, whose cache persists from turn to turn, gives the same answer as the whole conversation at
 * once. */
static void chat_is_the_conversation(void **state) {
    (void)state;
    const char *const turns[] = {"hi", "and then?", "why"};
    json_t *messages = json_array();
    json_array_append_new(messages, json_pack("{ssss}", "role", "system", "content", "Brief."));
    run(0, "printf 'hi\\n\\nand then?\\nwhy' | ./generate -c $T/chat.bin --chat --system Brief. --temperature 0 -g 12");
    char *chat = xstrdup(out), *answer = chat;
    assert_int_equal(lines_of(chat), 3);
    for (int i = 0; i < 3; i++) {
        json_array_append_new(messages, json_pack("{ssss}", "role", "user", "content", turns[i]));
        json_t *row = json_pack("{sO}", "messages", messages);
        char *text = json_dumps(row, 0);
        put("talk.jsonl", text);
        free(text), json_decref(row);
        run(0, "./generate -c $T/chat.bin -i $T/talk.jsonl --temperature 0 -g 12");
        row = json_line_of(out, 0);
        char *end = strchr(answer, '\n');
        *end = 0;
        assert_string_equal(answer, json_text_of(row, "completion"));
        json_array_append_new(messages, json_pack("{ssss}", "role", "assistant", "content", answer));
        answer = end + 1;
        json_decref(row);
    }
    free(chat), json_decref(messages);
    /* after /reset the first answer is repeated; with sampling, turns draw different tokens */
    run(0, "printf 'hi\\nmore\\n/reset\\nhi\\n' | ./generate -c $T/chat.bin --chat --temperature 0 -g 12");
    assert_int_equal(lines_of(out), 3);
    answer = strchr(strchr(out, '\n') + 1, '\n') + 1;
    assert_memory_equal(answer, out, strlen(answer));
    assert_holds(said, "the conversation was reset");
    assert_holds(said, "[truncated after 12 tokens: --max-new-tokens]");
    run(0, "printf 'hi\\n/reset\\nhi\\n' | ./generate -c $T/chat.bin --chat --temperature 1 -g 12");
    answer = strchr(out, '\n') + 1;
    assert_memory_not_equal(answer, out, strlen(answer));
}

/* The commands of a chat, from a file: no line editing. */
static void chat_commands(void **state) {
    (void)state;
    const char *const start = "./generate -c $T/chat.bin --chat --temperature 0 -g 12 ";
    char command[400];
    snprintf(command, sizeof command, "printf '/system Brief.\\nhi\\n' | %s", start);
    run(0, command);
    char *brief = xstrdup(out);
    assert_holds(said, "[the system message was set]");
    snprintf(command, sizeof command, "printf 'hi\\n' | %s --system Brief.", start);
    run(0, command);
    assert_string_equal(out, brief);
    snprintf(command, sizeof command, "printf '/system\\nhi\\n/retry\\n' | %s --system Brief.", start);
    run(0, command); /* removed, and a greedy answer is the same again */
    assert_int_equal(lines_of(out), 2);
    assert_memory_equal(out, strchr(out, '\n') + 1, strlen(out) / 2);
    snprintf(command, sizeof command, "printf 'hi\\n' | %s", start);
    run(0, command);
    char *plain = xstrdup(out);
    snprintf(command, sizeof command,
             "printf \"/retry\\n/save\\n/save $T/talk\\n/what now\\n/help\\nhi\\n/save $T/talk\\n\" | %s", start);
    run(0, command);
    assert_string_equal(out, plain);
    static const char *const parts[] = {"[there is no answer yet]",
                                        "[/save needs the name of a file]",
                                        "[there is nothing to save yet]",
                                        "[/what is no command; /help lists them]",
                                        "/system TEXT ",
                                        "[2 messages were written to "};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) assert_holds(said, parts[i]);
    run(0, "cat $T/talk"); /* what is saved is the conversation */
    json_t *row = json_line_of(out, 0), *messages = json_object_get(row, "messages");
    assert_int_equal(json_array_size(messages), 2);
    assert_string_equal(json_text_of(json_array_get(messages, 0), "content"), "hi");
    plain[strlen(plain) - 1] = 0;
    assert_string_equal(json_text_of(json_array_get(messages, 1), "content"), plain);
    run(0, "./generate -c $T/chat.bin --temperature 0 -g 12 -i $T/talk"); /* its last answer is ignored */
    json_t *again = json_line_of(out, 0);
    assert_string_equal(json_text_of(again, "completion"), plain);
    json_decref(row), json_decref(again);
    free(plain), free(brief);
    snprintf(command, sizeof command, "printf 'hi\\n/save /nonexistent/x\\n' | %s", start);
    run(0, command);
    assert_holds(said, "[/nonexistent/x: ");
}

/* Reads from the terminal until it has shown `part`, or fails after some seconds. */
static void terminal_shows(int terminal, TextBuffer *seen, const char *part) {
    for (int i = 0; i < 600; i++) {
        char bytes[4096];
        struct pollfd wait = {.fd = terminal, .events = POLLIN};
        if (seen->length && strstr(seen->text, part)) {
            text_clear(seen);
            return;
        }
        const ssize_t n = poll(&wait, 1, 50) > 0 ? read(terminal, bytes, sizeof bytes) : 0;
        if (n > 0) text_append(seen, bytes, (size_t)n);
    }
    fail_msg("the terminal did not show %s: %s", part, seen->length ? seen->text : "");
}

/* Types keys at a prompt, which the program shows when the terminal gives it single keys. */
static void type(int terminal, const char *keys) {
    struct termios modes;
    assert_int_equal(tcgetattr(terminal, &modes), 0);
    assert_false(modes.c_lflag & ICANON);
    assert_int_equal(write(terminal, keys, strlen(keys)), strlen(keys));
}

/* On a terminal, lines are edited and the earlier ones come back; Ctrl-C drops a line and Ctrl-D ends. */
static void chat_on_a_terminal(void **state) {
    (void)state;
    int terminal;
    TextBuffer seen = {0};
    const struct winsize size = {.ws_row = 24, .ws_col = 200};
    const pid_t pid = forkpty(&terminal, NULL, NULL, &size);
    assert_true(pid >= 0);
    if (!pid) {
        setenv("TERM", "xterm", 1);
        setenv("LC_ALL", "C.UTF-8", 1);
        execl("./generate", "generate", "-c", files_path("chat.bin"), "--chat", "--temperature", "0", "-g", "3", NULL);
        _exit(99);
    }
    char saved[200];
    snprintf(saved, sizeof saved, "/save %s\r", files_path("typed.json"));
    terminal_shows(terminal, &seen, "> ");
    type(terminal, "hxy\x7f\x7fi\xC3\xA9\r");                   /* two characters are deleted */
    terminal_shows(terminal, &seen, "--max-new-tokens]\r\n> "); /* the prompt: keys are read one by one again */
    type(terminal, "not sent");
    terminal_shows(terminal, &seen, "not sent");
    type(terminal, "\x03");
    terminal_shows(terminal, &seen, "[Ctrl-D ends]\r\n> ");
    type(terminal, "\x1b[A!\r"); /* the line before, with one more character */
    terminal_shows(terminal, &seen, "--max-new-tokens]\r\n> ");
    type(terminal, saved);
    terminal_shows(terminal, &seen, "typed.json]\r\n> ");
    type(terminal, "\x04");
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && !WEXITSTATUS(status));
    close(terminal), text_free(&seen);
    run(0, "cat $T/typed.json");
    json_t *row = json_line_of(out, 0), *messages = json_object_get(row, "messages");
    assert_string_equal(json_text_of(json_array_get(messages, 0), "content"), "hi\xC3\xA9");
    assert_string_equal(json_text_of(json_array_get(messages, 2), "content"), "hi\xC3\xA9!");
    json_decref(row);
}

/* The oldest turns are dropped when the context is full. A message that does not fit at all is refused, and the chat
 * continues. */
static void chat_overflows(void **state) {
    (void)state;
    run(0, "for i in 1 2 3 4 5 6 7 8; do echo \"this is message number $i of many of them\"; done | "
           "./generate -c $T/chat.bin --chat --temperature 0 -g 30 --system 'Be brief.'");
    assert_int_equal(lines_of(out), 8);
    assert_holds(said, "the oldest 2 messages were removed");
    /* the answer equals that of a new conversation of the remaining turns, here the last one alone */
    run(0, "(echo hi; head -c 250 /dev/zero | tr '\\0' a; echo; head -c 400 /dev/zero | tr '\\0' b; echo; echo hi) | "
           "./generate -c $T/chat.bin --chat --temperature 0 -g 30");
    assert_holds(said, "the prompt has 4");
    assert_holds(said, "at most 319 fit the model's context of 320");
    assert_int_equal(lines_of(out), 3);
    run(0, "printf 'a\\377b\\nok\\n' | ./generate -c $T/chat.bin --chat --temperature 0 -g 5");
    assert_holds(said, "[byte 2 is not UTF-8]");
    assert_int_equal(lines_of(out), 1);
}

typedef struct Session {
    pid_t pid;
    int in, out;
} Session;

static Session chat_start(const char *model) {
    int in[2], from[2];
    assert_true(!pipe(in) && !pipe(from));
    const pid_t pid = fork();
    if (!pid) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", files_directory, model);
        dup2(in[0], 0);
        dup2(from[1], 1);
        const int err = open(files_path(".err"), O_WRONLY | O_CREAT | O_TRUNC, 0644);
        dup2(err, 2);
        close(in[0]), close(in[1]), close(from[0]), close(from[1]), close(err);
        execl("./generate", "generate", "-c", path, "--chat", "--temperature", "0", "-g", "100000", (char *)NULL);
        _exit(127);
    }
    close(in[0]), close(from[1]);
    return (Session){pid, in[1], from[0]};
}

static void chat_say(const Session *s, const char *line) {
    assert_int_equal(write(s->in, line, strlen(line)), strlen(line));
}

/* Reads an answer up to its newline. If `signal` is not 0, sends it after the first bytes. Returns the length. */
static size_t chat_hear(const Session *s, int signal) {
    size_t n = 0;
    char c;
    while (read(s->out, &c, 1) == 1 && c != '\n') {
        if (++n == 10 && signal) kill(s->pid, signal);
    }
    return n;
}

static int chat_end(const Session *s) {
    int status;
    close(s->in), close(s->out);
    waitpid(s->pid, &status, 0);
    free(said);
    said = text_of(files_path(".err"));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void signals(void **state) {
    (void)state;
    enum { LONG = 20000 };
    char *text = (char *)xcalloc(LONG + 1, 1);
    memset(text, 'z', LONG);
    save_script("long.bin", LONG + 100, 1, text, MODELS_EOS, NULL);
    free(text);
    /* Ctrl-C stops the answer, and the next message is answered; the end of the input ends the program */
    Session s = chat_start("long.bin");
    chat_say(&s, "go\n");
    size_t n = chat_hear(&s, SIGINT);
    for (int again = 0; again < 20 && n > LONG / 2;
         again++) { /* interrupted so late that the context has no room for a second answer */
        chat_end(&s);
        s = chat_start("long.bin");
        chat_say(&s, "go\n");
        n = chat_hear(&s, SIGINT);
    }
    assert_true(n >= 10 && n <= LONG / 2);
    chat_say(&s, "again\n");
    assert_true(chat_hear(&s, SIGINT) >= 10);
    assert_int_equal(chat_end(&s), 0);
    assert_holds(said, "[stopped]\n[stopped]\n");
    /* SIGTERM ends the program, during an answer and while it waits */
    s = chat_start("long.bin");
    chat_say(&s, "go\n");
    assert_true(chat_hear(&s, SIGTERM) < LONG);
    assert_int_equal(chat_end(&s), 0);
    s = chat_start("long.bin");
    chat_say(&s, "go\n");
    chat_hear(&s, SIGINT);
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    kill(s.pid, SIGINT); /* at the prompt there is nothing to stop */
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    kill(s.pid, SIGTERM);
    assert_int_equal(chat_end(&s), 0);
    assert_holds(said, "Ctrl-D ends");
    /* one prompt */
    run(1, "./generate -c $T/long.bin --temperature 0 -g 20000 go > $T/cut & pid=$!; "
           "until [ -s $T/cut ]; do sleep 0.01; done; kill -INT $pid; wait $pid");
    assert_holds(said, "stopped by a signal after");
}

/* ---- bad input ------------------------------------------------------------------------------------------------- */

#if __has_include(<microhttpd.h>)
/* The server's greedy answer is that of the program (test_serve.c has the rest), and a signal ends it with status 0. */
static void serves(void **state) {
    (void)state;
    run(0, "./generate -c $T/chat.bin --temperature 0 -g 20 hello");
    char *text = xstrdup(out);
    put("ask.py", "import json, sys, urllib.request as u\n"
                  "body = {'messages': [{'role': 'user', 'content': 'hello'}], 'temperature': 0, 'max_tokens': 20}\n"
                  "q = u.Request(sys.argv[1] + '/v1/chat/completions', json.dumps(body).encode(),\n"
                  "              {'Content-Type': 'application/json', 'Authorization': 'Bearer secret'})\n"
                  "answer = json.load(u.build_opener(u.ProxyHandler({})).open(q))\n"
                  "print(answer['choices'][0]['message']['content'])\n");
    run(0,
        "export KEY=secret; ./generate -c $T/chat.bin --serve 127.0.0.1:0 --api-key-env KEY --slots 2 --max-model-len 1000 & pid=$!; "
        "until grep -q 'is served at' $T/.err; do sleep 0.01; done; "
        "python3 $T/ask.py $(sed -n 's|.* is served at \\(http://[^/]*\\)/v1.*|\\1|p' $T/.err); "
        "kill -TERM $pid; wait $pid");
    assert_string_equal(out, text);
    assert_holds(said, "--max-model-len 1000: the model's context is 320, which is used");
    assert_holds(said, "chat.bin is served at http://127.0.0.1:");
    assert_holds(said, "1 requests, 1 completions of 20 tokens");
    free(text);
    refused(2, "./generate -c $T/random.bin --serve 127.0.0.1:0 hi", "give only one of them");
    refused(2, "./generate -c $T/random.bin --serve 127.0.0.1:0 --json", "cannot be used with");
    refused(2, "./generate -c $T/random.bin --serve 127.0.0.1:0 --repetition-penalty 2", "has no --repetition-penalty");
    refused(2, "./generate -c $T/random.bin --serve 127.0.0.1:0 --max-model-len 1",
            "--max-model-len: 1 is less than 2");
    refused(2, "./generate -c $T/random.bin --serve 127.0.0.1:0 --tools calculator", "--tools: not used with --serve");
    refused(2, "./generate -c $T/random.bin --serve-any b", "used only with --serve");
    refused(1, "./generate -c $T/random.bin --serve nowhere", "expected HOST:PORT");
    refused(1, "./generate -c $T/random.bin --serve 0.0.0.0:0", "add --serve-any if that is meant");
    refused(1, "./generate -c $T/random.bin --serve 127.0.0.1:0 --api-key-env NO_SUCH_KEY", "no variable NO_SUCH_KEY");
}
#endif

static void bad_input(void **state) {
    (void)state;
    refused(2, "./generate hi", "-c/--checkpoint is required");
    refused(2, "./generate -c $T/random.bin", "a prompt is required");
    refused(2, "./generate -c $T/random.bin --chat hi", "give only one of them");
    refused(2, "./generate -c $T/random.bin -i x hi", "give only one of them");
    refused(2, "./generate -c - - < /dev/null", "standard input contains the model");
    refused(2, "./generate -c $T/random.bin --chat --num-samples 2", "--chat: cannot be used with");
    refused(2, "./generate -c $T/random.bin --chat --raw", "give only one of them");
    refused(2, "./generate -c $T/random.bin --system a --raw b", "give only one of them");
    refused(2, "./generate -c $T/random.bin --echo --json b", "--echo");
    refused(2, "./generate -c $T/random.bin --temperature -1 b", "out of range");
    refused(2, "./generate -c $T/random.bin --temperature 0.001 b", "--temperature: 0.001");
    refused(2, "./generate -c $T/random.bin --stop '' b", "--stop: the text is empty");
    refused(2, "./generate -c $T/random.bin --chat-template '{nobody' b", "--chat-template: ");
    refused(2, "./generate -c $T/random.bin --num-samples 4096 b", "at most");
    refused(1, "./generate -c $T/nothing.bin b", "nothing.bin: cannot open");
    refused(1, "./generate -c $T/tasks.shard b", "this is a record shard, expected a checkpoint");
    refused(1, "head -c 5000 $T/random.bin > $T/kept.cut; ./generate -c $T/kept.cut b; s=$?; rm $T/kept.cut; exit $s",
            "parameter data ends at byte 5000");
    refused(1, "./generate -c $T/bare.bin b", "has no tokenizer");
    refused(1, "./generate -c $T/bare.bin --tokenizer $T/none b", "no such tokenizer");
    refused(1, "./generate -c $T/small.bin --tokenizer bytes b", "a tokenizer of 260 tokens does not fit");
    refused(1, "./generate -c $T/random.bin $(printf 'a\\377')", "byte 2 is not UTF-8");
    refused(1, "printf 'a\\0b' | ./generate -c $T/random.bin -", "byte 2 is NUL");
    refused(1, "head -c 320 /dev/zero | tr '\\0' a | ./generate -c $T/random.bin -",
            "the prompt has 320 tokens, at most 319 fit");
    refused(1, "./generate -c $T/random.bin -i $T/none", "none: cannot open");
    refused(1, "./generate -c $T/random.bin -i $T/random.bin", "this is a checkpoint");
    refused(1, "./generate -c $T/random.bin -i /dev/null", "it contains no prompts");
    refused(1, "printf 'a\\nb\\nc\\377\\n' | ./generate -c $T/random.bin -i -",
            "standard input: line 3: byte 2 is not UTF-8");
    refused(1, "(echo ok; head -c 400 /dev/zero | tr '\\0' a) | ./generate -c $T/random.bin -i - -o $T/kept",
            "standard input: line 2: the prompt has 400 tokens");
    refused(1, "echo '{\"prompt\": 3}' | ./generate -c $T/random.bin -i - -o $T/kept", "field 'prompt': is a number");
    refused(1, "echo '{\"answer\": 3}' | ./generate -c $T/random.bin -i -", "has neither 'prompt' nor 'messages'");
    refused(1, "echo '{\"prompt\": ' | ./generate -c $T/random.bin -i -", "line 1: is not JSON");
    refused(1,
            "echo '{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}' | ./generate -c $T/random.bin -i -",
            "nothing before the final assistant message");
    refused(1, "./generate -c $T/random.bin -i $T/chat.shard", "a shard of kind chat, expected prompt");
    refused(1, "./generate -c $T/random.bin -i $T/empty.shard", "the shard is empty");
    refused(1, "./generate -c $T/small.bin -i $T/tasks.shard", "its vocabulary of 260 does not fit the model's 100");
    refused(1, "head -c 1300 $T/tasks.shard | ./generate -c $T/random.bin -i -", "standard input: ");
    refused(2, "./generate -c $T/random.bin -i $T/tasks.shard --system a", "already tokens");
    refused(1, "./generate -c $T/random.bin -o $T/no/such/file b", "no/such/file");
    refused(1, "./generate -c $T/random.bin -g 3 b > /dev/full", "standard output: cannot write: No space left");
    refused(1, "./generate -c $T/random.bin -g 3 --json b > /dev/full", "standard output: cannot write: No space left");
    refused(1, "./generate -c $T/random.bin -g 3 -o /dev/full b", "/dev/full: cannot write: No space left");
    refused(1, "./generate -c $T/line.bin --system a --chat < /dev/null", "has no section for role 'system'");
    /* a reader that closes the pipe early */
    run(0, "(./generate -c $T/long.bin --temperature 0 -g 20000 go; echo $? >&2) | head -c 5");
    assert_string_equal(out, "zzzzz");
    assert_holds(said, "standard output: cannot write: Broken pipe\n1\n");
}

static int setup(void **state) {
    if (models_setup(state)) return 1;
    chance = models_random(320);
    models_save(&chance, "random.bin", false, NULL);
    models_save(&chance, "chat.bin", false, "chatml");
    models_save(&chance, "bare.bin", true, NULL);
    Error e;
    Model small;
    const ModelConfig c = gpt2_config(1, 1, 16, 100, 32);
    assert_true(model_new(&small, &c, backend_cpu(), models_device, false, &e));
    model_init(&small, 1);
    models_save(&small, "small.bin", true, NULL);
    model_free(&small);
    ShardWriter w = models_shard("empty.shard", RECORD_PROMPT, "plain");
    models_commit(&w);
    w = models_shard("chat.shard", RECORD_CHAT, "plain");
    uint8_t mask[] = {0, 1};
    const Record r = {.tokens = (int32_t[]){1, 2}, .count = 2, .mask = mask};
    assert_true(shard_add(&w, &r, &e));
    models_commit(&w);
    return 0;
}

static int teardown(void **state) {
    model_free(&chance);
    return models_teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_is_an_uncached_forward),
        cmocka_unit_test(logprobs_are_those_of_a_forward_pass),
        cmocka_unit_test(one_text_whatever_the_way),
        cmocka_unit_test(streaming_is_utf8),
        cmocka_unit_test(stops),
        cmocka_unit_test(raw_prompts),
        cmocka_unit_test(prompts_of_all_kinds),
        cmocka_unit_test(samples_are_scored),
        cmocka_unit_test(rewards_of_programs),
        cmocka_unit_test(prompts_by_template),
        cmocka_unit_test(examples_in_prompts),
        cmocka_unit_test(asks_again),
        cmocka_unit_test(chat_is_the_conversation),
        cmocka_unit_test(chat_commands),
        cmocka_unit_test(chat_on_a_terminal),
        cmocka_unit_test(chat_overflows),
        cmocka_unit_test(signals),
#if __has_include(<microhttpd.h>)
        cmocka_unit_test(serves),
#endif
        cmocka_unit_test(bad_input),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
