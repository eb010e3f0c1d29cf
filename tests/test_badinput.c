/* test_badinput.c - the programs' messages about bad input.
 *
 * Every failure must print one clear line that begins with the program's name, exit with the right status, print
 * nothing on standard output and leave earlier outputs unchanged. Every program is run on every kind of file that it
 * reads, damaged in every way; on outputs that cannot be written; on wrong command lines; and with reward programs that
 * die or stop answering. Needs all programs. */
#include "../llmc/base/error.h"    /* PRINTF_LIKE, xmalloc */
#include "../llmc/records/shard.h" /* RECORD_CHAT, RECORD_PROMPT, ShardWriter */
#include "files.h"                 /* files_path, files_put, files_count, files_assert_content, ... */
#include "models.h"                /* models_commit, models_shard, models_setup, models_teardown */
#include "run.h"                   /* sh */
#include "shell.h"                 /* put, said, run, assert_holds, ... */

#define ANSWERS "-g 4 -p 2 -G 2 -x 1 --sample-count 0 "

static int setup(void **state) {
    if (models_setup(state)) return 1;
    put("chat.jsonl", "{\"prompt\":\"a=\",\"completion\":\"1\"}\n{\"prompt\":\"b=\",\"completion\":\"2\"}\n");
    put("tasks.jsonl", "{\"prompt\":\"a=\",\"answer\":\"1\",\"task\":\"exact\"}\n"
                       "{\"prompt\":\"b=\",\"answer\":\"2\",\"task\":\"exact\"}\n");
    put("prefs.jsonl", "{\"prompt\":\"a=\",\"chosen\":\"1\",\"rejected\":\"2\"}\n");
    put("long.jsonl",
        "{\"prompt\":\"a very long prompt, longer than sixteen tokens\",\"answer\":\"1\",\"task\":\"exact\"}\n");
    put("longchat.jsonl", "{\"prompt\":\"a very long prompt, longer than sixteen tokens\",\"completion\":\"1\"}\n");
    put("silent.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}\n");
    const char *shards[] = {"chat", "tasks", "prefs", "long", "longchat", "silent"};
    for (int i = 0; i < 6; i++) sh("data/make_shard --quiet -i $T/%s.jsonl -o $T/%s.shard", shards[i], shards[i]);
    /* a different tokenizer of the same size, and one that is larger than the model's vocabulary */
    sh("data/make_shard --quiet --template llama -i $T/chat.jsonl -o $T/large.shard");
    sh("data/make_shard --quiet --template llama -i $T/tasks.jsonl -o $T/largetasks.shard");
    sh("data/make_shard --quiet --tokenizer tests/golden/tokenizer_small.json -i $T/chat.jsonl -o $T/other.shard");
    sh("data/make_shard --quiet --tokenizer tests/golden/tokenizer_small.json -i $T/tasks.jsonl "
       "-o $T/othertasks.shard");
    ShardWriter w = models_shard("empty.shard", RECORD_CHAT, "plain");
    models_commit(&w);
    w = models_shard("emptytasks.shard", RECORD_PROMPT, "plain");
    models_commit(&w);
    put("empty", "");
    put("text", "this is no file of ours, but a text that is long enough to hold a header of four bytes and more\n");
    if (mkdir(files_path("dir"), 0755)) return 1;
    sh("./train_sft --layers 1 --width 16 --heads 2 --context 16 -i $T/chat.shard -o $T/m.bin -x 2 --save-steps 1 "
       "--state $T/m.state");
    sh("./train_sft --layers 1 --width 16 --heads 2 --context 16 -i $T/other.shard -o $T/small.bin -x 1");
    return 0;
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

/* The last line of standard error is the message. It is preceded only by the tables that a trainer prints first, and by
 * warnings. early: there is no other line, except about options that a test replaces by giving them again. */
static void fails(int status, bool early, const char *command, const char *part) {
    put("kept", "earlier");
    const int before = files_count();
    run(status, command);
    const char *space = strchr(command, ' '), *slash = command;
    for (const char *c = command; c < space; c++)
        if (*c == '/') slash = c + 1;
    char name[40];
    snprintf(name, sizeof name, "%.*s: ", (int)(space - slash), slash);
    char *line = said, *next;
    for (; (next = strchr(line, '\n')) && next[1]; line = next + 1) {
        static const char *const known[] = {
            "| ", "* ", "    ", "-- ", "model ", "memory ", "device ", "step ", "state written to "};
        bool good = !strncmp(line, name, strlen(name)) && !strncmp(line + strlen(name), "warning: ", 9);
        for (int i = 0; i < 9; i++) good |= !strncmp(line, known[i], strlen(known[i]));
        if (!good || (early && !strstr(line, ": given twice, "))) fail_msg("%s: more than a line: %s", command, said);
    }
    if (strncmp(line, name, strlen(name)) || !next) fail_msg("%s: no line of its own: %s", command, said);
    if (!strstr(line, part)) fail_msg("%s: \"%s\" does not hold \"%s\"", command, line, part);
    if (strlen(line) > 400) fail_msg("%s: too long a line: %s", command, line);
    assert_string_equal(out, "");
    files_assert_content(files_path("kept"), "earlier", 7);
    if (files_count() != before) fail_msg("%s: something was left behind", command);
    unlink(files_path("kept"));
}

PRINTF_LIKE(4, 5)
static void refuses(int status, bool early, const char *part, const char *format, ...) {
    char command[1500];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    fails(status, early, command, part);
}

/* ---- damaged files --------------------------------------------------------------------------------------------- */

/* Each kind of file with the commands that read it; %s is its path. */
static const struct {
    const char *good, *command;
} reader[] = {
    {"chat.shard", "./train_sft -c $T/m.bin -o $T/kept -x 1 -i %s"},
    {"chat.shard", "./train_sft -c $T/m.bin -o $T/kept -x 1 -i $T/chat.shard -j %s"},
    {"m.bin", "./train_sft -i $T/chat.shard -o $T/kept -x 1 -c %s"},
    {"m.state", "./train_sft -i $T/chat.shard -o $T/kept -x 4 --resume %s"},
    {"tasks.shard", "./train_grpo " ANSWERS "-c $T/m.bin -o $T/kept -i %s"},
    {"tasks.shard", "./train_grpo " ANSWERS "-c $T/m.bin -o $T/kept -i $T/tasks.shard -j %s"},
    {"m.bin", "./train_grpo " ANSWERS "-i $T/tasks.shard -o $T/kept -c %s"},
    {"m.bin", "./train_grpo " ANSWERS "-i $T/tasks.shard -o $T/kept -c $T/m.bin --beta 1 --reference %s"},
    {"m.bin", "./generate -o $T/kept -g 4 -c %s --json x"},
    {"tasks.shard", "./generate -o $T/kept -g 4 -c $T/m.bin -i %s"},
    {"m.bin", "./evaluate -i $T/tasks.shard -g 4 --completions $T/kept -c %s"},
    {"tasks.shard", "./evaluate -c $T/m.bin -g 4 --completions $T/kept -i %s"},
    {"chat.shard", "./evaluate -c $T/m.bin -i %s"},
    {"tasks.shard", "data/show %s >/dev/null"},
    {"m.bin", "data/show %s >/dev/null"},
};

/* Runs every reader of `good` on the file `bad`; the message must name the file. */
static void all_readers_refuse(const char *good, const char *bad, const char *part) {
    for (size_t i = 0; i < sizeof reader / sizeof *reader; i++) {
        char command[500], path[300];
        if (strcmp(reader[i].good, good)) continue;
        snprintf(path, sizeof path, "$T/%s", bad);
        snprintf(command, sizeof command, reader[i].command, path);
        fails(1, !strstr(command, "--reference"), command, part);
        assert_holds(strrchr(said, '/') ? said : "", bad);
    }
}

static void damaged_files(void **state) {
    (void)state;
    const char *kinds[] = {"chat.shard", "tasks.shard", "m.bin", "m.state"};
    for (int k = 0; k < 4; k++) {
        size_t n;
        uint8_t *data = files_get(files_path(kinds[k]), &n), *bad = (uint8_t *)xmalloc(n + 8);
        /* truncated at several lengths */
        const size_t cuts[] = {5, 500, 1024, n / 2, n - 1};
        for (int i = 0; i < 5; i++) {
            files_put(files_path("bad"), data, cuts[i] < n ? cuts[i] : n - 1);
            all_readers_refuse(kinds[k], "bad", "bad");
        }
        /* a bit flipped in the middle and one in the last byte */
        const size_t flips[] = {n / 2, n - 1, n - 20};
        for (int i = 0; i < 3; i++) {
            memcpy(bad, data, n);
            bad[flips[i]] ^= 4;
            files_put(files_path("bad"), bad, n);
            all_readers_refuse(kinds[k], "bad", "bad");
        }
        /* extra bytes after the end */
        memcpy(bad, data, n);
        memset(bad + n, 7, 8);
        files_put(files_path("bad"), bad, n + 8);
        all_readers_refuse(kinds[k], "bad", "bad");
        /* every header field set to an absurd value: nothing may be allocated for it */
        const int32_t absurd[] = {INT32_MAX, INT32_MIN, -1, 1 << 20};
        for (int field = 1; field < 9; field++) {
            memcpy(bad, data, n);
            memcpy(bad + 4 * field, &absurd[field % 4], 4);
            files_put(files_path("bad"), bad, n);
            all_readers_refuse(kinds[k], "bad", "bad");
        }
        /* the same, compressed: truncated, and a bit flipped inside a frame */
        size_t packed;
        uint8_t *z = files_zstd(data, n, &packed);
        files_put(files_path("bad"), z, packed - 5);
        all_readers_refuse(kinds[k], "bad", "bad");
        z[packed / 2] ^= 1;
        files_put(files_path("bad"), z, packed);
        all_readers_refuse(kinds[k], "bad", "bad");
        free(z), free(data), free(bad);
    }
}

static void files_of_another_kind(void **state) {
    (void)state;
    unlink(files_path("bad"));
    const char *trainers[] = {"./train_sft -o $T/kept -x 1", "./train_grpo " ANSWERS "-o $T/kept"};
    const char *right[] = {"chat.shard", "tasks.shard"}, *wrong[] = {"tasks.shard", "chat.shard"},
               *empty[] = {"empty.shard", "emptytasks.shard"};
    for (int i = 0; i < 2; i++) {
        const char *p = trainers[i];
        refuses(1, true, "expected", "%s -c $T/m.bin -i $T/%s", p, wrong[i]);
        refuses(1, true, "expected", "%s -c $T/m.bin -i $T/prefs.shard", p);
        refuses(1, true, "expected a record shard", "%s -c $T/m.bin -i $T/m.bin", p);
        refuses(1, true, "expected a checkpoint", "%s -c $T/%s -i $T/%s", p, right[i], right[i]);
        refuses(1, true, "text: ", "%s -c $T/m.bin -i $T/text", p);
        refuses(1, true, "text: ", "%s -c $T/text -i $T/%s", p, right[i]);
        refuses(1, true, "empty: ", "%s -c $T/m.bin -i $T/empty", p);
        refuses(1, true, "empty: ", "%s -c $T/empty -i $T/%s", p, right[i]);
        refuses(1, true, "the shard is empty", "%s -c $T/m.bin -i $T/%s", p, empty[i]);
        refuses(1, true, "is empty", "%s -c $T/m.bin -i $T/%s -j $T/%s", p, right[i], empty[i]);
        refuses(1, true, "bad: cannot open: No such file", "%s -c $T/m.bin -i $T/bad", p);
        refuses(1, true, "bad: cannot open: No such file", "%s -c $T/bad -i $T/%s", p, right[i]);
        refuses(1, true, "bad: cannot open: No such file", "%s --resume $T/bad -i $T/%s", p, right[i]);
        refuses(1, true, "dir: ", "%s -c $T/m.bin -i $T/dir", p);
        refuses(1, true, "dir: ", "%s -c $T/dir -i $T/%s", p, right[i]);
    }
    refuses(1, true, "expected", "./evaluate -c $T/m.bin -i $T/prefs.shard");
    refuses(1, true, "expected a record shard", "./evaluate -c $T/m.bin -i $T/m.bin");
    refuses(1, true, "the shard is empty", "./evaluate -c $T/m.bin -i $T/empty.shard");
    refuses(1, true, "the shard is empty", "./evaluate -c $T/m.bin -i $T/emptytasks.shard");
    refuses(1, true, "dir: ", "./evaluate -c $T/m.bin -i $T/dir");
    refuses(1, true, "dir: ", "./generate -c $T/dir x");
    refuses(1, true, "No such file", "./generate -c $T/bad x");
}

static void vocabularies_tokenizers_and_lengths(void **state) {
    (void)state;
    refuses(1, true, "vocabulary of 264 does not fit the model's 260",
            "./train_sft -c $T/m.bin -o $T/kept -x 1 -i $T/chat.shard -j $T/large.shard");
    refuses(1, true, "vocabulary of 264 does not fit the model's 260",
            "./train_grpo " ANSWERS "-c $T/m.bin -o $T/kept -i $T/tasks.shard -j $T/largetasks.shard");
    refuses(1, true, "does not fit the model's 260", "./evaluate -c $T/m.bin -i $T/large.shard");
    /* a vocabulary that is large enough but has different tokens */
    refuses(1, true, "a different tokenizer than the model's",
            "./train_sft -c $T/small.bin -o $T/kept -x 1 -i $T/chat.shard");
    refuses(1, true, "a different tokenizer than the model's",
            "./train_sft -c $T/small.bin -o $T/kept -x 1 -i $T/other.shard -j $T/chat.shard");
    refuses(1, true, "a different tokenizer than the model's",
            "./train_grpo " ANSWERS "-c $T/small.bin -o $T/kept -i $T/tasks.shard");
    refuses(1, true, "a different tokenizer than the model's",
            "./train_grpo " ANSWERS "-c $T/small.bin -o $T/kept -i $T/othertasks.shard -j $T/tasks.shard");
    refuses(1, true, "a different tokenizer than the model's", "./evaluate -c $T/small.bin -i $T/tasks.shard");
    /* prompts that do not fit the context */
    refuses(1, true, "all 1 prompts are longer than 15 tokens",
            "./train_grpo " ANSWERS "-c $T/m.bin -o $T/kept -i $T/long.shard");
    refuses(1, true, "at most 15 fit the model's context of 16", "./generate -c $T/m.bin 'a prompt longer than that'");
    refuses(1, true, "all 1 prompts are longer than 15 tokens", "./evaluate -c $T/m.bin -i $T/long.shard");
    refuses(1, true, "no record has a token to train on within --max-length",
            "./train_sft -c $T/m.bin -o $T/kept -x 1 -i $T/longchat.shard");
    refuses(1, false, "no record has a token to train on",
            "./train_sft -c $T/m.bin -o $T/kept -x 1 -i $T/silent.shard");
    refuses(1, false, "m.bin: its vocabulary of 260 does not fit the model's 603",
            "./train_grpo " ANSWERS "-c $T/small.bin -i $T/othertasks.shard -o $T/kept --beta 1 --reference $T/m.bin");
    refuses(1, true, "its vocabulary of 603 does not fit the model's 600",
            "./train_sft --layers 1 --width 16 --context 16 --vocab 600 -i $T/other.shard -o $T/kept -x 1");
}

/* ---- outputs --------------------------------------------------------------------------------------------------- */

static void outputs_that_cannot_be_written(void **state) {
    (void)state;
    const char *trainers[] = {"./train_sft -c $T/m.bin -x 1 -i $T/chat.shard",
                              "./train_grpo " ANSWERS "-c $T/m.bin -i $T/tasks.shard"};
    for (int i = 0; i < 2; i++) {
        const char *p = trainers[i];
        refuses(1, true, "cannot be replaced as a whole", "%s -o .", p);
        refuses(1, true, "m.state/: is not a folder", "%s -o $T/m.state/", p);
        refuses(1, true, "dir: is a directory", "%s -o $T/kept --state $T/dir", p);
        refuses(1, true, "No such file or directory", "%s -o $T/nowhere/x.bin", p);
        refuses(1, true, "Not a directory", "%s -o $T/m.bin/x.bin", p);
        refuses(1, true, "No such file or directory", "%s -o $T/kept --state $T/nowhere/x.state", p);
        refuses(1, true, "No such file or directory", "%s -o $T/kept --metrics $T/nowhere/x.jsonl", p);
        refuses(1, true, "m.bin", "%s -o $T/kept --tensorboard $T/m.bin", p);
        refuses(1, true, "No such file or directory", "%s -o $T/kept --report $T/nowhere/x.html", p);
        run(1, i ? "./train_grpo " ANSWERS "-c $T/m.bin -i $T/tasks.shard -o /dev/full"
                 : "./train_sft -c $T/m.bin -x 1 -i $T/chat.shard -o /dev/full");
        assert_holds(said, i ? "\ntrain_grpo: /dev/full: cannot write: No space left on device"
                             : "\ntrain_sft: /dev/full: cannot write: No space left on device");
        run(1, i ? "./train_grpo " ANSWERS "-c $T/m.bin -i $T/tasks.shard -o - > /dev/full"
                 : "./train_sft -c $T/m.bin -x 1 -i $T/chat.shard -o - > /dev/full");
        assert_holds(said, "standard output: cannot write: No space left on device");
        run(1, i ? "./train_grpo " ANSWERS "-c $T/m.bin -i $T/tasks.shard -o $T/kept --metrics /dev/full"
                 : "./train_sft -c $T/m.bin -x 1 -i $T/chat.shard -o $T/kept --metrics /dev/full");
        assert_holds(said, "/dev/full: cannot write: No space left on device");
        assert_int_equal(access(files_path("kept"), F_OK), -1);
    }
    refuses(1, true, "No such file or directory",
            "./train_sft -c $T/m.bin -x 1 -i $T/chat.shard -j $T/chat.shard -o $T/kept --best $T/nowhere/x");
    /* a reader that closes the pipe early */
    run(0,
        "(./train_sft -c $T/m.bin -x 1 -i $T/chat.shard -o - 2>$T/err; echo $? >$T/status) | true; "
        "while [ ! -s $T/status ]; do sleep 0.01; done; grep -q 'standard output: cannot write: Broken pipe' $T/err && grep -q 1 $T/status");
}

/* ---- command lines --------------------------------------------------------------------------------------------- */

static void command_lines(void **state) {
    (void)state;
    const char *good[] = {"./train_sft -c $T/m.bin -i $T/chat.shard -o $T/kept -x 1",
                          "./train_grpo " ANSWERS "-c $T/m.bin -i $T/tasks.shard -o $T/kept"};
    for (int i = 0; i < 2; i++) {
        const char *p = good[i];
        refuses(2, true, "--no-such-option", "%s --no-such-option", p);
        refuses(2, true, "-Z: unknown option", "%s -Z", p);
        refuses(2, true, "more: unexpected argument", "%s more", p);
        refuses(2, true, "--learning-rate: -1 is out of range [0, 10]", "%s --learning-rate -1", p);
        refuses(2, true, "'fast' is not a number", "%s -l fast", p);
        refuses(2, true, "'nan' is not a number", "%s -l nan", p);
        refuses(2, true, "--micro-tokens: 1 is out of range", "%s --micro-tokens 1", p);
        refuses(2, true, "'1.5' is not a whole number", "%s -x 1.5", p);
        refuses(2, true, "'square' is not one of constant|linear|cosine|wsd", "%s --lr-scheduler-type square", p);
        refuses(2, true, "'x' is not one of ", "%s --loss-type x", p);
        refuses(2, true, "needs a value", "%s --report", p);
        refuses(2, true, "-c/--checkpoint and --layers", "%s --layers 2", p);
        refuses(2, true, "--width: used only with --layers", "%s --width 2", p);
    }
    refuses(2, true, "-c/--checkpoint is required", "./train_sft -i $T/chat.shard -o $T/kept");
    refuses(2, true, "-i/--input is required", "./train_sft -c $T/m.bin -o $T/kept");
    refuses(2, true, "-o/--output is required", "./train_sft -c $T/m.bin -i $T/chat.shard");
    refuses(2, true, "--best: used only with --val", "%s --best $T/x", good[0]);
    refuses(2, true, "-c/--checkpoint is required", "./train_grpo -i $T/tasks.shard -o $T/kept");
    refuses(2, true, "-i/--input is required", "./train_grpo -c $T/m.bin -o $T/kept");
    refuses(2, true, "-o/--output is required", "./train_grpo -c $T/m.bin -i $T/tasks.shard");
    refuses(2, true, "--num-generations: 1 is out of range", "%s -G 1", good[1]);
    refuses(2, true, "weight 'heavy' is not a number", "%s --reward verify:heavy", good[1]);
    refuses(2, true, "nonsense", "%s --reward nonsense", good[1]);
    refuses(2, true, "command", "%s --reward command", good[1]);
    refuses(1, true, "at most 512 can be sampled at once", "%s -G 4096", good[1]);
    /* impossible models */
    refuses(1, true, "width 10 is not a multiple of 3 heads",
            "./train_sft --layers 1 --width 10 --heads 3 -i $T/chat.shard -o $T/kept");
    refuses(1, true, "out of memory: ", "./train_sft --layers 1024 --width 65536 -i $T/chat.shard -o $T/kept");
    refuses(1, true, "no GPT-2 of that size is known", "./train_sft -c d99999 -i $T/chat.shard -o $T/kept");
}

/* ---- reward programs ------------------------------------------------------------------------------------------- */

static void reward_programs(void **state) {
    (void)state;
    const char *p = "./train_grpo " ANSWERS "-c $T/m.bin -i $T/tasks.shard -o $T/kept --reward command --reward-cmd";
    refuses(1, false, "exit status 3", "%s 'exit 3'", p);
    refuses(1, false, "127", "%s 'exec 2>/dev/null; /no/such/program'", p);
    refuses(1, false, "signal", "%s 'kill -9 $$'", p);
    refuses(1, false, "after 0.2 seconds", "%s 'sleep 5' --reward-timeout 0.2", p);
    refuses(1, false, "0 of 4 answers", "%s 'cat > /dev/null; sleep 5' --reward-timeout 0.2", p);
    refuses(1, false, "hello", "%s 'while read -r x; do echo hello; done'", p);
    refuses(1, false, "more", "%s 'while read -r x; do echo 1; echo 1; done' -x 20", p);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(damaged_files),
                                       cmocka_unit_test(files_of_another_kind),
                                       cmocka_unit_test(vocabularies_tokenizers_and_lengths),
                                       cmocka_unit_test(outputs_that_cannot_be_written),
                                       cmocka_unit_test(command_lines),
                                       cmocka_unit_test(reward_programs)};
    return cmocka_run_group_tests_name("bad input", tests, setup, models_teardown);
}
