/* test_text.c - train_sft on plain text and on several files: documents apart, every token once, resumed runs byte for
 * byte; losses compared with those of evaluate, one document at a time. Needs train_sft, evaluate and data/make_shard. */
#include "files.h" /* files_path, files_get, files_put, files_setup, ... */
#include "shell.h" /* run, out, put, assert_holds, ... */

#include "../llmc/base/error.h" /* PRINTF_LIKE */
#include <math.h>

enum { CONTEXT = 32 };

static const char *const documents[] = {"The tea is hot.",
                                        "The sky is grey today, and tomorrow it will be blue again, I hope.",
                                        "One two three.", "a", "Rain falls on the roof all night long and we listen."};
enum { DOCUMENTS = sizeof documents / sizeof *documents };

PRINTF_LIKE(1, 2) static void sh(const char *format, ...) {
    char line[1000];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    run(0, line);
}

/* The last number after a key in a text. */
static double last_number(const char *text, const char *key) {
    const char *at = NULL;
    for (const char *s = text; (s = strstr(s, key)); s++) at = s + strlen(key);
    if (!at) fail_msg("no %s in %s", key, text);
    return strtod(at, NULL);
}

static double last_metric(const char *file, const char *key) {
    char name[80];
    snprintf(name, sizeof name, "\"%s\":", key);
    char *text = text_of(files_path(file));
    const double value = last_number(text, name);
    free(text);
    return value;
}

static int setup(void **state) {
    char line[200];
    if (files_setup(state)) return 1;
    setenv("T", files_path(""), 1);
    FILE *f = fopen(files_path("all.jsonl"), "w");
    for (int i = 0; i < DOCUMENTS; i++) fprintf(f, "{\"text\": \"%s\"}\n", documents[i]);
    fclose(f);
    run(0, "data/make_shard -i $T/all.jsonl -o $T/all.bin");
    for (int i = 0; i < DOCUMENTS; i++) { /* each with the token that begins the next document, the last without */
        snprintf(line, sizeof line, "{\"text\": \"%s\"}\n%s", documents[i],
                 i + 1 < DOCUMENTS ? "{\"text\": \"\"}\n" : "");
        put("one.jsonl", line);
        sh("data/make_shard -i $T/one.jsonl -o $T/one%d.bin", i);
    }
    sh("./train_sft --layers 1 --width 32 --heads 2 --context %d -i $T/all.bin -o $T/base.bin -x 40 -l 1e-2 "
       "--batch-tokens 64",
       CONTEXT);
    return 0;
}

/* The validation loss of packed documents is the mean over the tokens of the losses that evaluate finds for each document
 * alone, in windows of a record's length. float32 sums of some 150 terms: 1e-5. */
static void documents_are_apart(void **state) {
    (void)state;
    double nats = 0, tokens = 0;
    for (int i = 0; i < DOCUMENTS; i++) {
        sh("./evaluate -c $T/base.bin -i $T/one%d.bin --max-length %d", i, CONTEXT - 1);
        const double n = last_number(out, "\"tokens\":");
        nats += n * last_number(out, "\"loss\":");
        tokens += n;
    }
    sh("./train_sft -c $T/base.bin -i $T/all.bin -j $T/all.bin -o $T/o.bin -l 0 --metrics $T/m.jsonl "
       "--num-train-epochs 1 --micro-tokens 1024");
    assert_true(fabs(last_metric("m.jsonl", "eval_loss") - nats / tokens) < 1e-5);
    /* all tokens are in one step, so the training loss is the same */
    assert_true(fabs(last_metric("m.jsonl", "loss") - nats / tokens) < 1e-5);
    /* windows across documents give another loss of the same number of tokens */
    sh("./evaluate -c $T/base.bin -i $T/all.bin --max-length %d", CONTEXT - 1);
    assert_true(last_number(out, "\"tokens\":") == tokens);
    assert_true(fabs(last_number(out, "\"loss\":") - nats / tokens) > 1e-3);
}

/* A run that is resumed from the state in its middle ends with the same bytes. */
static void resumes(void **state) {
    (void)state;
    static const char *const data[] = {"-i $T/all.bin", "-i $T/all.bin -i $T/one1.bin", "-i \"$T/one[0-3].bin\""};
    for (int i = 0; i < 3; i++) {
        char command[300];
        snprintf(command, sizeof command, "./train_sft -c $T/base.bin %s -l 1e-3 --batch-tokens 40 -x 8", data[i]);
        sh("%s -o $T/whole.bin --state $T/s.state --save-steps 4", command);
        sh("%s -o $T/parts.bin --resume $T/s.state", command);
        size_t n, k;
        uint8_t *a = files_get(files_path("whole.bin"), &n), *b = files_get(files_path("parts.bin"), &k);
        assert_int_equal(n, k);
        assert_memory_equal(a, b, n);
        free(a), free(b);
    }
}

/* Records and text in one run; each file's validation loss by its name, and that of all. */
static void several_files(void **state) {
    (void)state;
    put("chat.jsonl",
        "{\"prompt\": \"Hello \", \"completion\": \"there.\"}\n{\"prompt\": \"How \", \"completion\": \"are you?\"}\n");
    run(0, "data/make_shard -i $T/chat.jsonl -o $T/chat.shard");
    run(0,
        "./train_sft -c $T/base.bin -i $T/chat.shard -i $T/all.bin -j $T/chat.shard -j $T/all.bin -o $T/o.bin -x 1 -l 0 "
        "--metrics $T/m.jsonl");
    const double both = last_metric("m.jsonl", "eval_loss"), chat = last_metric("m.jsonl", "eval_chat_loss");
    const double text = last_metric("m.jsonl", "eval_all_loss");
    run(0, "./evaluate -c $T/base.bin -i $T/chat.shard");
    const double n = last_number(out, "\"tokens\":");
    assert_true(fabs(last_number(out, "\"loss\":") - chat) < 1e-5);
    run(0, "./evaluate -c $T/base.bin -i $T/all.bin");
    const double k = last_number(out, "\"tokens\":");
    assert_true(fabs(both - (n * chat + k * text) / (n + k)) < 1e-5);
    /* two files of one name in different folders */
    run(0, "mkdir $T/more && cp $T/all.bin $T/more/chat.v2.bin");
    run(0, "./train_sft -c $T/base.bin -i $T/all.bin -j $T/chat.shard -j $T/more/chat.v2.bin -o $T/o.bin -x 1 -l 0 "
           "--metrics $T/m.jsonl");
    assert_true(fabs(last_metric("m.jsonl", "eval_chat_loss") - chat) < 1e-5);
    assert_true(fabs(last_metric("m.jsonl", "eval_chat_2_loss") - text) < 1e-5);
    assert_holds(said, "token");
}

static void refusals(void **state) {
    (void)state;
    static const struct {
        int status;
        const char *data, *part;
    } wrong[] = {{2, "-i $T/all.bin -i $T/all.bin", "are the same file"},
                 {2, "-i \"$T/none*.bin\"", "no file matches the pattern"},
                 {1, "-i $T/empty.bin", "the shard is empty"},
                 {1, "-i $T/all.bin -i $T/empty.bin", "the shard is empty"},
                 {1, "-i $T/lone.bin", "it has fewer than two tokens"},
                 {1, "-i $T/cut.bin", "file ends at byte"},
                 {1, "-i $T/all.bin -i $T/all.jsonl", "all.jsonl"},
                 {2, "-i $T/chat2.shard --tokenizer bytes", "--tokenizer: "}};
    put("lone.jsonl", "{\"text\": \"\"}\n");
    run(0, "data/make_shard -i $T/lone.jsonl -o $T/lone.bin");
    run(0, "head -c 1090 $T/all.bin > $T/cut.bin");
    put("chat2.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    run(0, "data/make_shard -i $T/chat2.jsonl -o $T/chat2.shard");
    int32_t header[256] = {20240520, 1, 0};
    files_put(files_path("empty.bin"), header, sizeof header);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char command[300];
        snprintf(command, sizeof command, "./train_sft -c $T/base.bin %s -o $T/x.bin -x 1", wrong[i].data);
        run(wrong[i].status, command);
        assert_holds(said, wrong[i].part);
        assert_true(access(files_path("x.bin"), F_OK) != 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(documents_are_apart),
        cmocka_unit_test(resumes),
        cmocka_unit_test(several_files),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests_name("text", tests, setup, files_teardown);
}
