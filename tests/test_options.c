/* test_options.c - options.h: every kind of option, valid and invalid, with exit statuses and streams of a child
 * process; files of options; the letters and the help of all programs. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/error.h"    /* Error */
#include "../llmc/base/options.h"  /* OPTION_FLAG, OPTION_INT, OPTION_REAL, OPTION_TEXT, ... */
#include "../llmc/base/suggest.h"  /* suggest_distance */
#include "../llmc/base/terminal.h" /* terminal_width, terminal_colors, TERMINAL_NARROWEST, terminal_columns, ... */
#include <fcntl.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORDS = 8 };

typedef struct Values {
    bool flag, on;
    int64_t steps, seed;
    double beta, rate;
    const char *input, *output;
    int loss;
    OptionList sets;
    /* the result of options_parse(), and the words from there on */
    int words;
    char word[WORDS][32];
} Values;

static Values initial(void) {
    return (Values){.on = true, .steps = 100, .beta = 0.04, .rate = 1e-3, .output = "out.bin", .loss = 1};
}

/* The results of a child process. */
typedef struct Run {
    int status;
    char out[8192], err[4096];
    Values v;
    char input[64], sets[3][32];
} Run;

static void parse(Values *v, int argc, char **argv) {
    const Option table[] = {OPTION_GROUP("Training"),
                            OPTION_TEXT("input", 'i', &v->input, "FILE", "shard to train on"),
                            OPTION_TEXT("output", 'o', &v->output, "FILE", "checkpoint to write"),
                            OPTION_INT("steps", 's', &v->steps, 1, 1e9, "optimizer steps"),
                            OPTION_INT("seed", 0, &v->seed, 0, 9007199254740992.0, "seed of all random numbers"),
                            OPTION_REAL("beta", 'b', &v->beta, -1, 1e3, "weight of the KL term"),
                            OPTION_GROUP("More"),
                            OPTION_REAL("learning-rate", 0, &v->rate, 0, 10, "peak"),
                            OPTION_CHOICE("loss", 0, &v->loss, "grpo|bnpo|dr_grpo", "objective"),
                            OPTION_LIST("set", 0, &v->sets, "NAME=X", "may be given more than once"),
                            OPTION_FLAG("verbose", 'v', &v->flag, "say more"),
                            OPTION_FLAG("on", 0, &v->on, "is on unless switched off"),
                            OPTION_END};
    const OptionAbout about = {"[options] [WORD...]", "Does nothing, for the sake of a test."};
    v->words = options_parse(table, &about, argc, argv);
    for (int i = v->words; i < argc; i++) snprintf(v->word[i - v->words], sizeof v->word[0], "%s", argv[i]);
    if (v->flag) options_print(table);
}

static void slurp(int fd, char *text, size_t size) {
    size_t n = 0;
    for (ssize_t got; n < size - 1 && (got = read(fd, text + n, size - 1 - n)) > 0;) n += (size_t)got;
    text[n] = 0;
    close(fd);
}

/* Runs parse() on the NULL-terminated words in a child process, with standard output to `to` unless NULL. */
static Run run_to(const char *to, const char *const *words) {
    Run r = {0};
    int out[2], err[2], back[2];
    assert_int_equal(pipe(out) | pipe(err) | pipe(back), 0);
    fflush(stdout);
    fflush(stderr);
    const pid_t child = fork();
    if (!child) {
        char *argv[16] = {"test"}, copy[15][300];
        int argc = 1;
        for (; words[argc - 1]; argc++) {
            snprintf(copy[argc - 1], sizeof copy[0], "%s", words[argc - 1]);
            argv[argc] = copy[argc - 1];
        }
        dup2(to ? open(to, O_WRONLY) : out[1], 1);
        dup2(err[1], 2);
        close(out[0]), close(err[0]), close(back[0]);
        program_invocation_short_name = "train_test";
        r.v = initial();
        parse(&r.v, argc, argv);
        snprintf(r.input, sizeof r.input, "%s", r.v.input ? r.v.input : "(none)");
        for (int i = 0; i < r.v.sets.count && i < 3; i++)
            snprintf(r.sets[i], sizeof r.sets[i], "%s", r.v.sets.items[i]);
        fflush(stdout);
        fflush(stderr);
        if (write(back[1], &r, sizeof r) != sizeof r) _exit(99);
        _exit(0);
    }
    close(out[1]), close(err[1]), close(back[1]);
    Run told;
    slurp(out[0], r.out, sizeof r.out);
    slurp(err[0], r.err, sizeof r.err);
    size_t n = 0;
    for (ssize_t got; n < sizeof told && (got = read(back[0], (char *)&told + n, sizeof told - n)) > 0;)
        n += (size_t)got;
    close(back[0]);
    if (n == sizeof told) {
        r.v = told.v;
        memcpy(r.input, told.input, sizeof r.input);
        memcpy(r.sets, told.sets, sizeof r.sets);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    r.status = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    return r;
}

#define RUN(...) run_to(NULL, (const char *const[]){__VA_ARGS__, NULL})

/* Expects exit status 0 and no output. */
static Run good(Run r) {
    if (r.status) fail_msg("status %d: %s", r.status, r.err);
    assert_string_equal(r.out, "");
    return r;
}

/* Expects exit status 2 and one line on standard error that names the program, contains `part` and points to --help. */
static void bad(Run r, const char *part) {
    if (r.status != 2) fail_msg("status %d, expected 2 (%s): %s", r.status, part, r.err);
    assert_string_equal(r.out, "");
    assert_ptr_equal(strstr(r.err, "train_test: "), r.err);
    assert_ptr_equal(strchr(r.err, '\n'), r.err + strlen(r.err) - 1);
    assert_non_null(strstr(r.err, "; see train_test --help\n"));
    if (!strstr(r.err, part)) fail_msg("\"%s\" does not hold \"%s\"", r.err, part);
}

static void test_defaults(void **state) {
    (void)state;
    const Run r = good(run_to(NULL, (const char *const[]){NULL}));
    const Values d = initial();
    assert_true(r.v.steps == d.steps && r.v.beta == d.beta && r.v.loss == d.loss && r.v.on && !r.v.flag);
    assert_string_equal(r.input, "(none)");
    assert_int_equal(r.v.words, 1);
    assert_string_equal(r.err, "");
}

static void test_every_kind(void **state) {
    (void)state;
    Run r = good(
        RUN("-i", "a.shard", "--steps", "7", "--beta=0.5", "--loss", "dr_grpo", "--no-on", "--set", "a=1", "--set=b"));
    assert_string_equal(r.input, "a.shard");
    assert_true(r.v.steps == 7 && r.v.beta == 0.5 && r.v.loss == 2 && !r.v.on && !r.v.flag);
    assert_int_equal(r.v.sets.count, 2);
    assert_string_equal(r.sets[0], "a=1");
    assert_string_equal(r.sets[1], "b");
    r = good(RUN("-ia", "-s9", "-b", "-1"));
    assert_string_equal(r.input, "a");
    assert_true(r.v.steps == 9 && r.v.beta == -1);
    r = good(RUN("--steps=5", "--steps=6", "--on", "--no-on", "--on")); /* the last value counts */
    assert_true(r.v.steps == 6 && r.v.on);
    assert_string_equal(r.err, "train_test: warning: -s/--steps: given twice, first as 5; 6 counts\n"
                               "train_test: warning: --on: given twice, first as true; false counts\n"
                               "train_test: warning: --on: given twice, first as false; true counts\n");
    assert_string_equal(good(RUN("--steps=5", "-s", "5")).err, ""); /* nothing is lost */
    r = good(RUN("--input", ""));                                   /* an empty text is a valid text */
    assert_string_equal(r.input, "");
    r = good(RUN("--input", "-", "--output=--steps"));
    assert_string_equal(r.input, "-");
    assert_true(r.v.steps == 100);
}

static void test_integers(void **state) {
    (void)state;
    assert_true(good(RUN("-s", "1")).v.steps == 1);
    assert_true(good(RUN("-s", "1000000000")).v.steps == 1000000000);
    assert_true(good(RUN("-s", "2k")).v.steps == 2048);
    assert_true(good(RUN("-s", "3M")).v.steps == 3 << 20);
    assert_true(good(RUN("--seed", "1g")).v.seed == 1 << 30);
    assert_true(good(RUN("--seed", "9007199254740991")).v.seed == 9007199254740991); /* not rounded through a double */
    assert_true(good(RUN("--seed", "+5")).v.seed == 5);
    bad(RUN("-s", "0"), "-s/--steps: 0 is out of range [1, 1000000000]");
    bad(RUN("-s", "1000000001"), "out of range");
    bad(RUN("-s", "1g"), "1g is out of range");
    bad(RUN("--steps=-3"), "-3 is out of range");
    bad(RUN("--seed", "99999999999999999999"), "--seed: 99999999999999999999 is out of range");
    bad(RUN("--seed", "-99999999999999999999"), "out of range");
    bad(RUN("--seed", "9000000000000g"), "out of range");
    static const char *const not [] = {"", "x", "1x", "1.5", "1e3", "1kk", "k", "1 ", " 1", "0x10", "1k ", "--", "ten"};
    for (size_t i = 0; i < sizeof not / sizeof *not ; i++) bad(RUN("--steps", not [i]), "is not a whole number");
}

static void test_reals(void **state) {
    (void)state;
    assert_true(good(RUN("--beta", "1e-3")).v.beta == 1e-3);
    assert_true(good(RUN("--beta", ".5")).v.beta == 0.5);
    assert_true(good(RUN("--beta", "1000")).v.beta == 1000);
    assert_true(good(RUN("--learning-rate", "0")).v.rate == 0);
    bad(RUN("--beta", "1000.001"), "-b/--beta: 1000.001 is out of range [-1, 1000]");
    bad(RUN("--beta", "-1.1"), "out of range");
    bad(RUN("--beta", "inf"), "out of range");
    bad(RUN("--beta", "-inf"), "out of range");
    bad(RUN("--beta", "1e999"), "out of range");
    static const char *const not [] = {"", "x", "1e-3x", "1,5", "nan", "NaN", "--", "0.5 ", " 0.5"};
    for (size_t i = 0; i < sizeof not / sizeof *not ; i++) bad(RUN("--beta", not [i]), "is not a number");
}

static void test_choices(void **state) {
    (void)state;
    assert_int_equal(good(RUN("--loss", "grpo")).v.loss, 0);
    assert_int_equal(good(RUN("--loss", "bnpo")).v.loss, 1);
    static const char *const not [] = {"", "dapo", "GRPO", "grpo|bnpo", "grp", "grpox", "|"};
    for (size_t i = 0; i < sizeof not / sizeof *not ; i++)
        bad(RUN("--loss", not [i]), "is not one of grpo|bnpo|dr_grpo");
    assert_int_equal(option_choice_index("a|bc|d", "bc"), 1);
    assert_int_equal(option_choice_index("a|bc|d", "c"), -1);
    char name[3];
    /* hidden from the compiler, which would warn about the overflow that is tested */
    volatile size_t size = sizeof name;
    option_choice_name("a|bcd|e", 1, name, size); /* truncated without an overflow */
    assert_string_equal(name, "bc");
    option_choice_name("a|bcd|e", 2, name, size);
    assert_string_equal(name, "e");
}

static void test_unknown(void **state) {
    (void)state;
    bad(RUN("--frobnicate"), "--frobnicate: unknown option; see");
    bad(RUN("--frobnicate=3"), "--frobnicate: unknown option; see");
    bad(RUN("-x"), "-x: unknown option");
    bad(RUN("-?"), "-?: unknown option");
    bad(RUN("--help=x"), "--help: takes no value");
    bad(RUN("-vx"), "-x: unknown option");
    bad(RUN("word", "--nope"), "--nope: unknown");
    bad(RUN("--no-steps"), "--no-steps: unknown"); /* only flags have a negation */
    bad(RUN("--verbose=1"), "--verbose: takes no value");
    bad(RUN("--no-verbose=1"), "--no-verbose: takes no value");
    bad(RUN("--steps"), "--steps: needs a value");
    bad(RUN("-s"), "-s: needs a value");
    bad(RUN("-vs"), "needs a value");
}

static void test_suggestions(void **state) {
    (void)state;
    static const struct {
        const char *word, *near;
    } cases[] = {{"--stpes", "--steps"},
                 {"--setps=3", "--steps"},
                 {"--stepsize", "--steps"},
                 {"--lerning-rate", "--learning-rate"},
                 {"--learningrate", "--learning-rate"},
                 {"--learning_rte", "--learning-rate"},
                 {"--verbos3", "--verbose"},
                 {"--no-verbsoe", "--no-verbose"},
                 {"--rate", "--learning-rate"},
                 {"--vresion", "--version"},
                 {"--LEARNINGRATE", "--learning-rate"},
                 {"--outptu", "--output"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char part[80];
        snprintf(part, sizeof part, ": unknown option (did you mean %s?); see", cases[i].near);
        bad(RUN(cases[i].word, "4"), part);
    }
    bad(RUN("--xyzzy"), "--xyzzy: unknown option; see");
    bad(RUN("--q"), "--q: unknown option; see");
}

/* The distance against its definition: the shortest way by single edits, found by trying all of them. */
static int distance_by_search(const char *a, const char *b, int limit) {
    const size_t n = strlen(a);
    char word[16];
    if (!strcmp(a, b)) return 0;
    if (!*a || !*b) return (int)(n + strlen(b));
    if (*a == *b) return distance_by_search(a + 1, b + 1, limit);
    if (limit <= 1) return 100;
    int best = 100;
    const int drop = 1 + distance_by_search(a + 1, b, limit - 1), add = 1 + distance_by_search(a, b + 1, limit - 1),
              change = 1 + distance_by_search(a + 1, b + 1, limit - 1);
    best = drop < add ? drop : add;
    if (change < best) best = change;
    if (n > 1 && b[1] && a[0] == b[1] && a[1] == b[0]) {
        snprintf(word, sizeof word, "%s", a + 2);
        const int swap = 1 + distance_by_search(word, b + 2, limit - 1);
        if (swap < best) best = swap;
    }
    return best;
}

static void test_distance(void **state) {
    (void)state;
    static const char *const words[] = {"",     "a",     "ab",    "ba",   "abc",   "acb",    "cab", "abcd",
                                        "badc", "steps", "setps", "stpe", "pests", "xsteps", "seed"};
    enum { N = sizeof words / sizeof *words };
    for (int i = 0; i < N; i++)
        for (int k = 0; k < N; k++)
            assert_int_equal(suggest_distance(words[i], words[k]), distance_by_search(words[i], words[k], 12));
}

static void test_abbreviations(void **state) {
    (void)state;
    assert_true(good(RUN("--st", "3")).v.steps == 3);
    assert_true(good(RUN("--learn=2")).v.rate == 2);
    assert_true(!good(RUN("--no-o")).v.on);
    bad(RUN("--se", "3"), "--se: ambiguous, it may be --seed, --set; see");
    bad(RUN("--no"), "--no: ambiguous, it may be --no-verbose, --no-on; see");
    assert_true(good(RUN("--on")).v.on);
}

/* `_` is `-`, and peers' names are accepted where the program has the option that they stand for. */
static void test_other_names(void **state) {
    (void)state;
    assert_true(good(RUN("--learning_rate", "2")).v.rate == 2);
    assert_true(good(RUN("--learning_r=2")).v.rate == 2);
    assert_true(good(RUN("--lr", "3")).v.rate == 3);
    assert_true(!good(RUN("--no_on")).v.on);
    assert_string_equal(good(RUN("--train_file", "a.shard")).input, "a.shard");
    bad(RUN("--max-epochs", "3"), "--max-epochs: unknown"); /* the test has no --num-train-epochs */
    const char *alias, *name;
    for (size_t i = 0; (alias = options_alias(i, &name)); i++)
        if (!strcmp(alias, name)) fail_msg("%s stands for itself", alias);
}

/* ---- files of options ------------------------------------------------------------------------------------------ */

/* Writes a file of options and returns its path. */
static const char *config(const char *text) {
    static char path[] = "/tmp/test_options.XXXXXX";
    static bool made;
    if (!made) close(mkstemp(path));
    made = true;
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    return path;
}

static void test_config(void **state) {
    (void)state;
    Run r =
        good(RUN("--config", config("# a run\nsteps: 7\nbeta: 0.5\ninput: 'a b.shard'\nloss: dr_grpo\nset: [a=1, b]\n"
                                    "\"on\": false\nlearning_rate: 2e-3\nverbose: yes\noutput: ~\n")));
    assert_true(r.v.steps == 7 && r.v.beta == 0.5 && r.v.loss == 2 && !r.v.on && r.v.flag && r.v.rate == 2e-3);
    assert_string_equal(r.input, "a b.shard");
    assert_int_equal(r.v.sets.count, 2);
    assert_string_equal(r.sets[1], "b");
    assert_non_null(strstr(r.err, "* steps                         | 7 (default: 100)\n"));
    assert_non_null(strstr(r.err, "| output                        | out.bin\n"));
    r = good(RUN("-s", "8", "--config", config("steps: 7\nset: x\nlr: 1"), "--set", "y")); /* the command line counts */
    assert_true(r.v.steps == 8 && r.v.rate == 1 && r.v.sets.count == 1);
    assert_string_equal(r.sets[0], "y");
    assert_string_equal(r.err, "");
    /* what is under `defaults` has a value, but does not count as given */
    r = good(RUN("--config", config("beta: 0.5\ndefaults:\n  steps: 7\n  set: [a, b]\nverbose: true\n")));
    assert_true(r.v.steps == 7 && r.v.sets.count == 2 && r.v.beta == 0.5);
    assert_non_null(strstr(r.err, "| steps                         | 7\n"));
    assert_non_null(strstr(r.err, "* beta                          | 0.5 (default: 0.04)\n"));
    good(RUN("--config", config(""))), good(RUN("--config", config("# nothing\n")));
    static const char *const wrong[][2] = {
        {"steps: 7\nstpes: 8", ":2: 'stpes' is no option (did you mean steps?)"},
        {"steps: 7\nxyzzy: 8", ":2: 'xyzzy' is no option; see"},
        {"steps: x", ":1: steps: 'x' is not a whole number"},
        {"beta: 1e9", ":1: beta: 1e9 is out of range [-1, 1000]"},
        {"loss: dapo", ":1: loss: 'dapo' is not one of grpo|bnpo|dr_grpo"},
        {"\nverbose: 1", ":2: verbose: '1' is neither true nor false"},
        {"steps:\n  more: 1", ":2: a nested mapping; expected lines such as"},
        {"defaults: {defaults: {steps: 1}}", ":1: a nested mapping"},
        {"defaults: {steps: {a: 1}}", ":1: a nested mapping"},
        {"defaults: {steps: [1]}", ":1: steps: a list"},
        {"defaults: 3", ":1: 'defaults' is no option"},
        {"steps: 1\ndefaults:\n  steps: 2", ":3: 'steps' is already on line 1"},
        {"set: [a, [b]]", ":1: a nested list"},
        {"set: [a, {b: 1}]", ":1: a nested mapping"},
        {"steps: [7]", ":1: steps: a list, expected one value"},
        {"steps: 7\nsteps: 8", ":2: 'steps' is already on line 1"},
        {"lr: 1\nlearning_rate: 2", ":2: 'learning-rate' is given twice, under two names"},
        {"- steps", ":1: a list without a key"},
        {"steps", ":1: text without a key"},
        {"steps: &a 1\nseed: *a", ":2: a reference"},
        {"steps: 1\n---\nseed: 1", ":2: a second document"},
        {"[a]: 1", ":1: a key that is not the name of an option"},
        {"steps: 'x", "not YAML: "},
        {"steps: 1\n\tseed: 2", "not YAML: "},
        {"input: \"a\\0b\"", ":1: a NUL character"},
        {"\"seed\\0x\": 1", ":1: a NUL character"},
        {"config: x", ":1: 'config' is no option"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) bad(RUN("--config", config(wrong[i][0])), wrong[i][1]);
    bad(RUN("--config", "/nonexistent.yaml"), "--config: /nonexistent.yaml: ");
    bad(RUN("--config", "a", "--config", "b"), "--config: given twice");
}

/* What options_write() writes, --config reads as the same values, whatever the texts look like. */
static void test_config_round_trip(void **state) {
    (void)state;
    static const char *const texts[] = {"plain", "",  "true", "null",       "~",        "1e3", "a: b", "# no comment",
                                        "- x",   "'", "\"",   "two\nlines", " blanks ", "*",   "{",    "\xC3\xA9",
                                        "@x",    "%", "0x10", "a\tb"};
    static Values v, w;
    static const Option to[] = {OPTION_TEXT("input", 0, &v.input, "FILE", ""),
                                OPTION_REAL("beta", 0, &v.beta, 0, 9, ""),
                                OPTION_INT("steps", 0, &v.steps, 1, 9, ""),
                                OPTION_LIST("set", 0, &v.sets, "X", ""),
                                OPTION_FLAG("on", 0, &v.on, ""),
                                OPTION_CHOICE("loss", 0, &v.loss, "no|y|2", ""),
                                OPTION_END};
    static const Option from[] = {OPTION_TEXT("input", 0, &w.input, "FILE", ""),
                                  OPTION_REAL("beta", 0, &w.beta, 0, 9, ""),
                                  OPTION_INT("steps", 0, &w.steps, 1, 9, ""),
                                  OPTION_LIST("set", 0, &w.sets, "X", ""),
                                  OPTION_FLAG("on", 0, &w.on, ""),
                                  OPTION_CHOICE("loss", 0, &w.loss, "no|y|2", ""),
                                  OPTION_END};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        v = w = initial();
        const char *words[] = {texts[i], "b"};
        Error e;
        v.input = texts[i];
        v.beta = 1.0 / 3 + (double)i * 1e-16;
        v.steps = 0; /* not set */
        v.on = i % 2;
        v.loss = (int)(i % 3);
        v.sets = (OptionList){words, 1 + (int)(i % 2)};
        const char *path = config("");
        if (!options_write(to, path, NULL, &e)) fail_msg("%s", e.text);
        char *argv[] = {"test", "--config", (char *)path, NULL};
        options_parse_all(from, &(OptionAbout){"", ""}, 3, argv);
        assert_string_equal(w.input, texts[i]);
        assert_true(w.beta == v.beta && w.steps == 100 && w.on == v.on && w.loss == v.loss);
        assert_int_equal(w.sets.count, v.sets.count);
        assert_string_equal(w.sets.items[0], texts[i]);
        for (int k = 0; k < w.sets.count; k++) free((char *)w.sets.items[k]);
        free(w.sets.items), free((char *)w.input);
    }
    Error e;
    v = initial();
    v.input = "\xff";
    assert_false(options_write(to, config(""), NULL, &e));
    assert_non_null(strstr(e.text, "cannot be written as YAML"));
}

static void test_words(void **state) {
    (void)state;
    Run r = good(RUN("one", "-s", "3", "two", "--", "--beta", "-x"));
    assert_true(r.v.steps == 3 && r.v.beta == 0.04);
    static const char *const expected[] = {"one", "two", "--beta", "-x", ""};
    for (int i = 0; i < 5; i++) assert_string_equal(r.v.word[i], expected[i]);
    r = good(RUN("-")); /* standard input, a word */
    assert_string_equal(r.v.word[0], "-");
}

static void test_help(void **state) {
    (void)state;
    static const char *const how[] = {"--help", "-h", "--hel"};
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        const Run r = RUN("-s", "44", how[i], "--unknown-behind-it");
        assert_int_equal(r.status, 0);
        assert_string_equal(r.err, "");
        static const char *const part[] = {"Usage: train_test [options] [WORD...]\n",
                                           "Does nothing, for the sake of a test.",
                                           "\nTraining:\n",
                                           "\nMore:\n",
                                           "  -i, --input FILE ",
                                           "  -s, --steps N ",
                                           "optimizer steps (default: 100)",
                                           "--beta X ",
                                           "(default: 0.04)",
                                           "(default: out.bin)",
                                           "--loss NAME ",
                                           "objective: grpo|bnpo|dr_grpo",
                                           "  -v, --[no-]verbose ",
                                           "say more (default: no)",
                                           "      --[no-]on ",
                                           "is on unless switched off",
                                           "(default: yes)",
                                           "\nCommon:\n",
                                           "--config FILE",
                                           "--version",
                                           "--help"};
        for (size_t k = 0; k < sizeof part / sizeof *part; k++)
            if (!strstr(r.out, part[k])) fail_msg("help does not hold \"%s\":\n%s", part[k], r.out);
    }
    assert_int_equal(run_to("/dev/full", (const char *const[]){"--help", NULL}).status, 1);
    assert_int_equal(run_to("/dev/full", (const char *const[]){"-h", NULL}).status, 1);
}

static void test_version(void **state) {
    (void)state;
    const Run r = RUN("--version", "--unknown-behind-it");
    assert_int_equal(r.status, 0);
    assert_string_equal(r.out, "train_test (llmc) " LLMC_VERSION "\n");
}

static void test_print(void **state) {
    (void)state;
    const Run r = good(RUN("-v", "--set", "a=1", "--set", "b=2", "--beta", "0.125", "--loss", "grpo", "--seed", "0"));
    assert_string_equal(r.err, "-- Training\n"
                               "| input                         | (not set)\n"
                               "| output                        | out.bin\n"
                               "| steps                         | 100\n"
                               "| seed                          | 0\n"
                               "* beta                          | 0.125 (default: 0.04)\n"
                               "-- More\n"
                               "| learning-rate                 | 0.001\n"
                               "* loss                          | grpo (default: bnpo)\n"
                               "* set                           | a=1 b=2\n"
                               "* verbose                       | true (default: false)\n"
                               "| on                            | true\n");
}

/* The longest line of the text, in columns. */
static size_t longest(const char *text) {
    size_t most = 0;
    for (; *text; text += strcspn(text, "\n"), text += *text == '\n')
        if (strcspn(text, "\n") > most) most = strcspn(text, "\n");
    return most;
}

static void test_width(void **state) {
    (void)state;
    static const char *const widths[] = {"40", "57", "80", "100"};
    const char *words[] = {"--set", "a long list",
                           "--set", "of values that",
                           "--set", "do not fit into",
                           "--set", "a line of any terminal",
                           "-v",    NULL};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        setenv("COLUMNS", widths[i], 1);
        const Run help = RUN("--help"), print = run_to(NULL, words);
        unsetenv("COLUMNS");
        if (longest(help.out) > (size_t)atoi(widths[i])) fail_msg("wider than %s:\n%s", widths[i], help.out);
        if (i && longest(print.err) > (size_t)atoi(widths[i])) fail_msg("wider than %s:\n%s", widths[i], print.err);
    }
    assert_int_equal(terminal_width(-1), 80);
    setenv("COLUMNS", "3", 1);
    assert_int_equal(terminal_width(-1), TERMINAL_NARROWEST);
    setenv("COLUMNS", "x", 1);
    assert_int_equal(terminal_width(-1), 80);
    unsetenv("COLUMNS");
}

static void test_colors(void **state) {
    (void)state;
    static const struct {
        const char *kind, *no;
        bool escapes, colors;
    } cases[] = {{"xterm", NULL, true, true},  {"xterm", "", true, true}, {"xterm", "1", true, false},
                 {"dumb", NULL, false, false}, {"", NULL, false, false},  {NULL, NULL, false, false}};
    int master, slave, ends[2];
    char *kind = getenv("TERM") ? strdup(getenv("TERM")) : NULL,
         *no = getenv("NO_COLOR") ? strdup(getenv("NO_COLOR")) : NULL;
    assert_int_equal(openpty(&master, &slave, NULL, NULL, NULL) | pipe(ends), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].kind) setenv("TERM", cases[i].kind, 1);
        else unsetenv("TERM");
        if (cases[i].no) setenv("NO_COLOR", cases[i].no, 1);
        else unsetenv("NO_COLOR");
        assert_int_equal(terminal_escapes(slave), cases[i].escapes);
        assert_int_equal(terminal_colors(slave), cases[i].colors);
        assert_false(terminal_colors(ends[1]));
    }
    if (kind) setenv("TERM", kind, 1);
    if (no) setenv("NO_COLOR", no, 1);
    free(kind), free(no);
    close(master), close(slave), close(ends[0]), close(ends[1]);
}

/* A value longer than the table's column is truncated without an overflow. */
static void test_long_values(void **state) {
    (void)state;
    char word[280];
    memset(word, 'x', sizeof word);
    word[sizeof word - 1] = 0;
    good(RUN("-v", "--input", word, "--set", word, "--set", word, "--set", word));
    bad(RUN("--loss", word), "is not one of");
    bad(RUN("--steps", word), "is not a whole number");
}

/* ---- the programs ---------------------------------------------------------------------------------------------- */

/* What a letter means, in every program that has it. */
static const struct {
    char letter;
    const char *names[2];
} letters[] = {{'c', {"checkpoint"}},
               {'i', {"input"}},
               {'j', {"val"}},
               {'o', {"output"}},
               {'l', {"learning-rate"}},
               {'x', {"max-steps"}},
               {'p', {"num-prompts"}},
               {'G', {"num-generations"}},
               {'g', {"max-new-tokens", "max-completion-length"}},
               {'d', {"batch-tokens", "per-device-train-batch-size"}},
               {'t', {"tokenizer"}},
               {'q', {"quiet"}},
               {'n', {"records"}},
               {'h', {"help"}}};
enum { LETTERS = sizeof letters / sizeof *letters };

/* The index in letters[] of what a line of --help shows: "  -c, --checkpoint FILE ...". */
static size_t letter_of(const char *program, const char *line) {
    const char *name = line + strlen("  -c, --");
    if (!strncmp(name, "[no-]", 5)) name += 5;
    const size_t length = strcspn(name, " \n");
    for (size_t k = 0; k < LETTERS; k++)
        for (int i = 0; i < 2 && letters[k].letter == line[3]; i++) {
            const char *known = letters[k].names[i];
            if (known && strlen(known) == length && !memcmp(known, name, length)) return k;
        }
    fail_msg("%s --help: no program may have -%c for --%.*s", program, line[3], (int)length, name);
    return 0;
}

static const char *const programs[] = {"./train_sft",     "./train_rm",      "./train_ppo",      "./train_dpo",
                                       "./train_grpo",    "./generate",      "./evaluate",       "data/make_shard",
                                       "data/make_tasks", "data/make_prefs", "data/make_corpus", "data/pick",
                                       "data/show"};

static void test_letters(void **state) {
    (void)state;
    int shown[LETTERS] = {0};
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        char command[64], line[1024];
        snprintf(command, sizeof command, "%s --help", programs[i]);
        FILE *help = popen(command, "r");
        assert_non_null(help);
        while (fgets(line, sizeof line, help)) {
            if (strncmp(line, "  -", 3) || strncmp(line + 4, ", --", 4)) continue;
            shown[letter_of(programs[i], line)]++;
        }
        if (pclose(help)) fail_msg("%s failed", command);
    }
    for (size_t k = 0; k + 1 < LETTERS; k++)
        if (!shown[k]) fail_msg("no program has -%c", letters[k].letter);
    assert_int_equal(shown[LETTERS - 1], sizeof programs / sizeof *programs);
}

/* Every program's help fits 80 columns and names no source file; every default is shown. */
static void test_programs_help(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        char command[64], line[1024];
        snprintf(command, sizeof command, "COLUMNS=80 %s --help", programs[i]);
        FILE *help = popen(command, "r");
        assert_non_null(help);
        while (fgets(line, sizeof line, help)) {
            if (terminal_columns(line, strcspn(line, "\n")) > 80) fail_msg("%s --help: wide: %s", programs[i], line);
            if (strstr(line, ".h\n") || strstr(line, ".h)") || strstr(line, "llmc/"))
                fail_msg("%s --help names a source: %s", programs[i], line);
        }
        assert_int_equal(pclose(help), 0);
    }
}

static void test_programs_version(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        char command[64], line[256] = "", start[64];
        snprintf(command, sizeof command, "%s --version", programs[i]);
        snprintf(start, sizeof start, "%s (llmc) 0.", strrchr(programs[i], '/') + 1);
        FILE *version = popen(command, "r");
        assert_non_null(version);
        if (!fgets(line, sizeof line, version) || strncmp(line, start, strlen(start)))
            fail_msg("%s printed %s", command, line);
        assert_int_equal(pclose(version), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),      cmocka_unit_test(test_every_kind),
        cmocka_unit_test(test_integers),      cmocka_unit_test(test_reals),
        cmocka_unit_test(test_choices),       cmocka_unit_test(test_unknown),
        cmocka_unit_test(test_suggestions),   cmocka_unit_test(test_distance),
        cmocka_unit_test(test_abbreviations), cmocka_unit_test(test_other_names),
        cmocka_unit_test(test_config),        cmocka_unit_test(test_config_round_trip),
        cmocka_unit_test(test_words),         cmocka_unit_test(test_help),
        cmocka_unit_test(test_version),       cmocka_unit_test(test_print),
        cmocka_unit_test(test_width),         cmocka_unit_test(test_colors),
        cmocka_unit_test(test_long_values),   cmocka_unit_test(test_letters),
        cmocka_unit_test(test_programs_help), cmocka_unit_test(test_programs_version),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
