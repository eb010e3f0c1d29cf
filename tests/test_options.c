/* test_options.c - options.h: every kind of option, valid and invalid, with exit statuses and streams of a child
 * process; the letters
 * of all programs. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/options.h" /* OPTION_FLAG, OPTION_GROUP, OPTION_INT, OPTION_REAL, ... */
#include <fcntl.h>
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
    r = good(RUN("--input", "")); /* an empty text is a valid text */
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
    bad(RUN("--frobnicate"), "--frobnicate: unknown");
    bad(RUN("--frobnicate=3"), "--frobnicate=3: unknown");
    bad(RUN("-x"), "-x: unknown option");
    bad(RUN("-?"), "-?: unknown option");
    bad(RUN("--help=x"), "--help=x: unknown");
    bad(RUN("-vx"), "-x: unknown option");
    bad(RUN("word", "--nope"), "--nope: unknown");
    bad(RUN("--steps", "3", "--stepsize", "4"), "--stepsize: unknown");
    bad(RUN("--no-steps"), "--no-steps: unknown"); /* only flags have a negation */
    bad(RUN("--verbose=1"), "--verbose=1: ");      /* a flag takes no value */
    bad(RUN("--no-verbose=1"), "--no-verbose=1: ");
    bad(RUN("--steps"), "--steps: needs a value");
    bad(RUN("-s"), "-s: needs a value");
    bad(RUN("-vs"), "needs a value");
}

static void test_abbreviations(void **state) {
    (void)state;
    assert_true(good(RUN("--st", "3")).v.steps == 3);
    assert_true(good(RUN("--learn=2")).v.rate == 2);
    assert_true(!good(RUN("--no-o")).v.on);
    bad(RUN("--se", "3"), "--se: unknown or ambiguous"); /* seed, set */
    bad(RUN("--no"), "--no: unknown or ambiguous");      /* no-on, no-verbose */
    assert_true(good(RUN("--on")).v.on);
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
        static const char *const part[] = {"usage: train_test [options] [WORD...]\n",
                                           "Does nothing, for the sake of a test.",
                                           "\nTraining:\n",
                                           "\nMore:\n",
                                           "  -i, --input FILE ",
                                           "  -s, --steps N ",
                                           "optimizer steps (default: ",
                                           "--beta X ",
                                           "(default: 0.04)",
                                           "(default: out.bin)",
                                           "--loss NAME ",
                                           "objective: grpo|bnpo|dr_grpo (default: bnpo)",
                                           "  -v, --[no-]verbose ",
                                           "say more (default: no)",
                                           "      --[no-]on ",
                                           "is on unless switched off (default: yes)",
                                           "--help"};
        for (size_t k = 0; k < sizeof part / sizeof *part; k++)
            if (!strstr(r.out, part[k])) fail_msg("help does not hold \"%s\":\n%s", part[k], r.out);
    }
    assert_int_equal(run_to("/dev/full", (const char *const[]){"--help", NULL}).status, 1);
    assert_int_equal(run_to("/dev/full", (const char *const[]){"-h", NULL}).status, 1);
}

static void test_print(void **state) {
    (void)state;
    const Run r = good(RUN("-v", "--set", "a=1", "--set", "b=2", "--beta", "0.125", "--loss", "grpo"));
    static const char *const part[] = {"-- Training\n",
                                       "| steps ",
                                       "| 100 ",
                                       "| 0.125 ",
                                       "| a=1 b=2 ",
                                       "| grpo ",
                                       "| input                        | (none)  "};
    for (size_t k = 0; k < sizeof part / sizeof *part; k++)
        if (!strstr(r.err, part[k])) fail_msg("the table does not hold \"%s\":\n%s", part[k], r.err);
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
} letters[] = {{'c', {"checkpoint"}},  {'i', {"input"}},           {'j', {"val"}},
               {'o', {"output"}},      {'l', {"learning-rate"}},   {'x', {"max-steps"}},
               {'p', {"num-prompts"}}, {'G', {"num-generations"}}, {'g', {"max-new-tokens", "max-completion-length"}},
               {'h', {"help"}}};
enum { LETTERS = sizeof letters / sizeof *letters };

/* The index in letters[] of what a line of --help shows: "  -c, --checkpoint FILE ...". */
static size_t letter_of(const char *program, const char *line) {
    const char *name = line + strlen("  -c, --");
    const size_t length = strcspn(name, " \n");
    for (size_t k = 0; k < LETTERS; k++)
        for (int i = 0; i < 2 && letters[k].letter == line[3]; i++) {
            const char *known = letters[k].names[i];
            if (known && strlen(known) == length && !memcmp(known, name, length)) return k;
        }
    fail_msg("%s --help: no program may have -%c for --%.*s", program, line[3], (int)length, name);
    return 0;
}

static void test_letters(void **state) {
    (void)state;
    static const char *const programs[] = {"./train_sft",     "./train_rm",      "./train_ppo", "./train_dpo",
                                           "./train_grpo",    "./generate",      "./evaluate",  "data/make_shard",
                                           "data/make_tasks", "data/make_prefs", "data/show"};
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),      cmocka_unit_test(test_every_kind),  cmocka_unit_test(test_integers),
        cmocka_unit_test(test_reals),         cmocka_unit_test(test_choices),     cmocka_unit_test(test_unknown),
        cmocka_unit_test(test_abbreviations), cmocka_unit_test(test_words),       cmocka_unit_test(test_help),
        cmocka_unit_test(test_print),         cmocka_unit_test(test_long_values), cmocka_unit_test(test_letters),
    };
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
