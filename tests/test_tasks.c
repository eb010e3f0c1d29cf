/* test_tasks.c - the generators of problems, and data/make_tasks as a program.
 *
 * Answers are checked by independent methods: a left-to-right calculator in long double, qsort, deletion of bracket
 * pairs, a parser of the stories. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/error.h"             /* Error, xcalloc, xstrdup, PRINTF_LIKE */
#include "../llmc/base/io.h"                /* file_slurp */
#include "../llmc/base/random.h"            /* Random, random_start, RANDOM_TASK */
#include "../llmc/base/text.h"              /* TextBuffer, text_free, text_clear, text_string */
#include "../llmc/records/shard.h"          /* shard_close, shard_open, shard_record, RECORD_CHAT, ... */
#include "../llmc/reward/task.h"            /* TASK_ADD, TASK_COUNTDOWN, TASK_MUL, TASK_SORT, ... */
#include "../llmc/reward/task_arithmetic.h" /* task_arithmetic_solve, task_arithmetic_key, task_evaluate */
#include "../llmc/reward/task_puzzles.h"    /* Countdown, CountdownNode, countdown_print, countdown_solve */
#include "../llmc/reward/tasks.h"           /* task_check, task_solve, task_problem */
#include "../llmc/reward/verify.h"          /* rewards_verify */
#include "../llmc/reward/verify_answer.h"   /* RewardInput, verify_digit, verify_letter */
#include "../llmc/text/tokenizer.h"         /* Tokenizer, tokenizer_free, tokenizer_load */
#include <sys/stat.h>

static const char *const names[TASK_KINDS] = {"add",      "sub",  "mul",    "arithmetic", "countdown", "sort",
                                              "brackets", "word", "bigmul", "lookup",     "guess"};

/* ---- independent answers --------------------------------------------------------------------------------------- */

/* Shunting-yard over + - * / and parentheses, up to `stop`. */
static long double calculate(const char *text, char stop) {
    long double value[64];
    char op[64];
    int values = 0, ops = 0;
    for (const char *c = text;; c++) {
        if (*c >= '0' && *c <= '9') {
            char *end;
            value[values++] = strtold(c, &end);
            c = end - 1;
            continue;
        }
        const bool last = !*c || *c == stop;
        const int rank = last || *c == ')' ? 0 : *c == '(' ? 3 : *c == '*' || *c == '/' ? 2 : 1;
        while (*c != '(' && ops && op[ops - 1] != '(' && (op[ops - 1] == '*' || op[ops - 1] == '/' ? 2 : 1) >= rank) {
            const long double b = value[--values], a = value[--values];
            const char o = op[--ops];
            value[values++] = o == '+' ? a + b : o == '-' ? a - b : o == '*' ? a * b : a / b;
        }
        if (last) break;
        if (*c == ')') ops--;
        else op[ops++] = *c;
    }
    assert_int_equal(values, 1);
    return value[0];
}

static void compare_numbers(const char *prompt, const char *answer) {
    char mine[64];
    snprintf(mine, sizeof mine, "%.0Lf", calculate(prompt, '='));
    if (strcmp(mine, "-0") && strcmp(mine, answer)) fail_msg("%s%s, not %s", prompt, answer, mine);
}

static int compare_ints(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static void check_sort(const char *prompt, const char *answer) {
    int x[64], n = 0, used;
    char mine[512] = "";
    assert_memory_equal(prompt, "sort ", 5);
    for (const char *c = prompt + 5; sscanf(c, "%d%n", &x[n], &used) == 1; c += used) n++;
    qsort(x, (size_t)n, sizeof *x, compare_ints);
    for (int i = 0; i < n; i++) sprintf(mine + strlen(mine), i ? " %d" : "%d", x[i]);
    assert_string_equal(mine, answer);
}

static void check_brackets(const char *prompt, const char *answer) {
    char all[200];
    snprintf(all, sizeof all, "%s", prompt + strlen("close "));
    char *colon = strchr(all, ':');
    strcpy(colon, answer);
    for (bool more = true; more;) {
        more = false;
        for (char *c = all; *c && c[1]; c++)
            if (!memcmp(c, "()", 2) || !memcmp(c, "[]", 2) || !memcmp(c, "{}", 2)) {
                memmove(c, c + 2, strlen(c + 2) + 1);
                more = true;
                break;
            }
    }
    assert_string_equal(all, "");
    assert_null(strpbrk(answer, "([{"));
}

/* Checks by counting that every given number is used at most once, and the value by the calculator. */
static void check_countdown(const char *prompt, const char *expression) {
    int given[8], n = 0, used, target;
    const char *c = prompt;
    for (; sscanf(c, "%d%n", &given[n], &used) == 1; c += used) n++;
    assert_int_equal(sscanf(c, " -> %d:", &target), 1);
    assert_true(fabsl(calculate(expression, 0) - target) < 1e-9L);
    for (c = expression; *c; c++) {
        if (*c < '0' || *c > '9') continue;
        const int x = (int)strtol(c, (char **)&c, 10);
        int i = 0;
        while (i < n && given[i] != x) i++;
        assert_true(i < n);
        given[i] = -1;
        c--;
    }
}

static void check_word(const char *prompt, const char *answer) {
    long long have = 0, a, b;
    char name[20], thing[20], pronoun[20], copy[1000];
    snprintf(copy, sizeof copy, "%s", prompt);
    assert_int_equal(sscanf(copy, "%19s has %lld %19[a-z].", name, &have, thing), 3);
    for (char *s = strchr(copy, '.'); (s = strtok(s, ".\n")); s = NULL) {
        if (sscanf(s, " %19s finds %lld more", pronoun, &a) == 2) have += a;
        else if (sscanf(s, " %19s gives %lld to", pronoun, &a) == 2) have -= a;
        else if (sscanf(s, " %19s buys %lld boxes with %lld", pronoun, &a, &b) == 3) have += a * b;
        else if (sscanf(s, " By magic there are now %lld times", &a) == 1) have *= a;
        else if (sscanf(s, " %19s makes %lld equal piles", pronoun, &a) == 2) {
            assert_int_equal(have % a, 0);
            have /= a;
        } else assert_int_equal(sscanf(s, " How many %19s does", pronoun), 1);
    }
    assert_int_equal(have, atoll(answer));
}

/* Identifies the problem of a story or a chain, independent of order and names; two splits must share none. It is made
 * from the prompt, not from the task's own key. */
static void problem_of(TaskKind kind, const char *prompt, char *out) {
    int x[64], n = 0, used;
    const char *c = prompt;
    if (kind == TASK_COUNTDOWN || kind == TASK_SORT) {
        c += kind == TASK_SORT ? 5 : 0;
        for (; sscanf(c, "%d%n", &x[n], &used) == 1; c += used) n++;
        qsort(x, (size_t)n, sizeof *x, compare_ints);
        strcpy(out, c);
        for (int i = 0; i < n; i++) sprintf(out + strlen(out), " %d", x[i]);
    } else if (kind == TASK_ADD || kind == TASK_MUL) {
        int a, b;
        char op;
        assert_int_equal(sscanf(prompt, "%d%c%d", &a, &op, &b), 3);
        sprintf(out, "%d%c%d", a < b ? a : b, op, a < b ? b : a);
    } else if (kind == TASK_WORD) {
        *out = 0;
        for (; *c; c++) /* the numbers, and the verbs' first letters */
            if (verify_digit(*c) || (*c == ' ' && strchr("fgbtm", c[1]) && verify_letter(c[-1])))
                sprintf(out + strlen(out), "%c", *c == ' ' ? c[1] : *c);
    } else strcpy(out, prompt);
}

/* ---- generators ------------------------------------------------------------------------------------------------ */

static void test_answers(void **state) {
    (void)state;
    Task t = {0};
    for (int kind = 0; kind < TASK_BIGMUL; kind++)
        for (int level = 1; level <= 5; level++)
            for (int style = TASK_DIRECT; style <= TASK_SCRATCHPAD; style++)
                for (int i = 0; i < 60; i++) {
                    const TaskOptions o = {.level = level, .min_digits = 1, .style = (TaskStyle)style};
                    Error e;
                    if (!task_check((TaskKind)kind, names[kind], &o, &e)) {
                        assert_true(style == TASK_REVERSED && kind > TASK_ARITHMETIC);
                        continue;
                    }
                    const bool wrong = i % 3 == 2;
                    Random r = random_start(9, RANDOM_TASK + (uint64_t)(1000 * level + i));
                    task_problem(&t, (TaskKind)kind, &o, &r);
                    assert_true(task_solve(&t, &o, wrong, &r, &e));
                    const char *said = strstr(t.completion.text, "#### ");
                    assert_int_equal(said != NULL, style == TASK_SCRATCHPAD || kind == TASK_WORD);
                    said = said ? said + 5 : t.completion.text;
                    switch (kind) {
                    case TASK_COUNTDOWN:
                        if (!wrong) check_countdown(t.prompt.text, said);
                        break;
                    case TASK_SORT: check_sort(t.prompt.text, t.answer.text); break;
                    case TASK_BRACKETS: check_brackets(t.prompt.text, t.answer.text); break;
                    case TASK_WORD: check_word(t.prompt.text, t.answer.text); break;
                    default: compare_numbers(t.prompt.text, t.answer.text);
                    }
                    /* the demonstration: right or wrong as requested, of the same length, and the verifier agrees */
                    if (kind != TASK_COUNTDOWN && style != TASK_REVERSED)
                        assert_int_equal(strcmp(said, t.answer.text) != 0, wrong);
                    if (kind != TASK_COUNTDOWN) assert_int_equal(strlen(said), strlen(t.answer.text));
                    char *fields = json_dumps(t.fields, JSON_COMPACT);
                    float score = -1;
                    const RewardInput in = {.task = names[kind],
                                            .completion = t.completion.text,
                                            .answer = t.answer.text,
                                            .fields = fields};
                    assert_true(rewards_verify(&in, &score));
                    if (score != (wrong ? 0 : 1)) fail_msg("%s%s: %g", t.prompt.text, t.completion.text, (double)score);
                    free(fields);
                    /* every line of the work is a true equation */
                    if (style != TASK_SCRATCHPAD || kind == TASK_SORT || kind == TASK_BRACKETS) continue;
                    const char *hash = strstr(t.completion.text, "#### ");
                    for (const char *line = t.completion.text; line < hash; line = strchr(line, '\n') + 1) {
                        const long double stated = strtold(strchr(line, '=') + 1, NULL);
                        if (*line == '-' || (wrong && kind == TASK_COUNTDOWN))
                            continue; /* the calculator has no signs */
                        if (calculate(line, '=') != stated) fail_msg("%s", t.completion.text);
                    }
                }
    task_free(&t);
}

static void test_golden_demonstrations(void **state) {
    (void)state;
    static const struct {
        TaskKind kind;
        int64_t a, b;
        char op;
        const char *work, *reversed;
    } cases[] = {{TASK_ADD, 57, 68, '+', "7+8=15\n5+6+1=12\n#### 125", "521"},
                 {TASK_ADD, 99, 1, '+', "9+1=10\n9+0+1=10\n#### 100", "001"},
                 {TASK_ADD, 0, 0, '+', "0+0=0\n#### 0", "0"},
                 {TASK_SUB, 52, 38, '-', "12-8=4\n5-3-1=1\n#### 14", "41"},
                 {TASK_SUB, 38, 50, '-', "10-8=2\n5-3-1=1\n#### -12", "-21"},
                 {TASK_SUB, 100, 1, '-', "10-1=9\n10-0-1=9\n1-0-1=0\n#### 99", "99"},
                 {TASK_MUL, 57, 68, '*', "57*8=456\n57*60=3420\n456+3420=3876\n#### 3876", "6783"},
                 {TASK_MUL, 57, 60, '*', "57*60=3420\n#### 3420", "0243"},
                 {TASK_MUL, 57, 0, '*', "57*0=0\n#### 0", "0"},
                 {TASK_MUL, 12, 305, '*', "12*5=60\n12*300=3600\n60+3600=3660\n#### 3660", "0663"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Task t = {.kind = cases[i].kind, .count = 2, .value = {cases[i].a, cases[i].b}, .op = {'+', cases[i].op}};
        Random r = random_start(1, 1);
        t.result = task_evaluate(&t);
        task_arithmetic_solve(TASK_SCRATCHPAD, false, &r, &t);
        assert_string_equal(t.completion.text, cases[i].work);
        text_clear(&t.completion);
        task_arithmetic_solve(TASK_REVERSED, false, &r, &t);
        assert_string_equal(t.completion.text, cases[i].reversed);
        task_free(&t);
    }
    /* keys: one problem, one key */
    static const struct {
        int count;
        int64_t value[4];
        char op[5];
        const char *key;
    } keys[] = {{2, {34, 12}, "++", "+12+34"},        {2, {34, 12}, "+-", "+34-12"},   {2, {12, 34}, "+*", "+12*34"},
                {2, {34, 12}, "+*", "+12*34"},        {3, {2, 3, 4}, "++*", "+2+3*4"}, {3, {4, 3, 2}, "+*+", "+2+3*4"},
                {4, {9, 3, 4, 5}, "+-*+", "+5+9-3*4"}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        Task t = {.count = keys[i].count};
        memcpy(t.value, keys[i].value, sizeof keys[i].value);
        memcpy(t.op, keys[i].op, (size_t)t.count);
        task_arithmetic_key(&t, &t.key);
        assert_string_equal(t.key.text, keys[i].key);
        task_free(&t);
    }
}

static void test_countdown_solver(void **state) {
    (void)state;
    static const struct {
        int64_t number[6];
        int n;
        int64_t target;
        int steps; /* smallest count; 0: impossible */
    } cases[] = {{{3, 4, 5}, 3, 35, 2},
                 {{3, 4, 5}, 3, 7, 1},
                 {{1, 1, 1}, 3, 3, 2},
                 {{1, 1, 1}, 3, 4, 0},
                 {{25, 50, 75, 100}, 4, 2, 1},
                 {{2, 2}, 2, 4, 1},
                 {{2, 3}, 2, 4, 0},
                 {{8, 3, 8, 3}, 4, 24, 1},
                 {{1, 2, 3, 50}, 4, 301, 3},
                 {{25, 50, 75, 100, 3, 6}, 6, 952, 5}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Countdown c;
        TextBuffer b = {0};
        const bool found = countdown_solve(&c, cases[i].number, cases[i].n, cases[i].target);
        assert_int_equal(found, cases[i].steps > 0);
        if (!found) continue;
        assert_int_equal(c.count - cases[i].n, cases[i].steps);
        countdown_print(&c, c.count - 1, 0, false, &b);
        assert_true(calculate(b.text, 0) == cases[i].target);
        text_free(&b);
    }
    /* a problem without a solution has no demonstration */
    Error e;
    Random r = random_start(1, RANDOM_TASK);
    const TaskOptions easy = {.level = 1, .min_digits = 1};
    Task impossible = {.kind = TASK_COUNTDOWN, .count = 2, .value = {2, 3}, .result = 4};
    text_string(&impossible.prompt, "2 3 -> 4:");
    assert_false(task_solve(&impossible, &easy, false, &r, &e));
    assert_string_equal(e.text, "countdown: no solution of '2 3 -> 4:'");
    task_free(&impossible);
    /* parentheses: all shapes of three operators, printed and calculated, against the tree's own value */
    for (int shape = 0; shape < 4 * 4 * 4 * 5; shape++) {
        const char ops[] = "+-*/";
        Countdown c = {.count = 7};
        const char p = ops[shape % 4], q = ops[shape / 4 % 4], s = ops[shape / 16 % 4];
        for (int i = 0; i < 4; i++) c.node[i] = (CountdownNode){7 + 4 * i, 0, 0, 0};
        const int join[5][3][2] = {{{0, 1}, {4, 2}, {5, 3}},
                                   {{0, 1}, {2, 3}, {4, 5}},
                                   {{1, 2}, {0, 4}, {5, 3}},
                                   {{1, 2}, {4, 3}, {0, 5}},
                                   {{2, 3}, {1, 4}, {0, 5}}};
        long double value[7] = {7, 11, 15, 19};
        for (int i = 0; i < 3; i++) {
            const int *at = join[shape / 64][i];
            const char op = i == 0 ? p : i == 1 ? q : s;
            const long double a = value[at[0]], b = value[at[1]];
            c.node[4 + i] = (CountdownNode){0, op, at[0], at[1]};
            value[4 + i] = op == '+' ? a + b : op == '-' ? a - b : op == '*' ? a * b : a / b;
        }
        TextBuffer b = {0};
        countdown_print(&c, 6, 0, false, &b);
        assert_true(fabsl(calculate(b.text, 0) - value[6]) < 1e-9L * (1 + fabsl(value[6])));
        text_free(&b);
    }
}

static void test_check(void **state) {
    (void)state;
    static const struct {
        TaskKind kind;
        TaskOptions o;
        const char *message;
    } bad[] = {{TASK_SORT, {.level = 1, .min_digits = 1, .style = TASK_REVERSED}, "has no number to reverse"},
               {TASK_MUL, {.level = 1, .min_digits = 1, .digits = 10}, "the maximum is 9"},
               {TASK_ADD, {.level = 1, .min_digits = 3, .digits = 2}, "needs --digits"},
               {TASK_ADD, {.level = 1, .min_digits = 2}, "needs --digits"},
               {TASK_SORT, {.level = 1, .min_digits = 1, .digits = 2}, "does not apply to sort"},
               {TASK_ADD, {.level = 1, .min_digits = 1, .largest = 9}, "takes --digits"},
               {TASK_BRACKETS, {.level = 1, .min_digits = 1, .largest = 9}, "has no numbers"},
               {TASK_ADD, {.level = 1, .min_digits = 1, .items = 3}, "out of range [2, 2]"},
               {TASK_COUNTDOWN, {.level = 1, .min_digits = 1, .items = 7}, "out of range [2, 6]"}};
    Error e;
    Task t = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(task_check(bad[i].kind, names[bad[i].kind], &bad[i].o, &e));
        if (!strstr(e.text, bad[i].message)) fail_msg("%s", e.text);
    }
    /* the largest of everything */
    static const struct {
        TaskKind kind;
        TaskOptions o;
    } good[] = {{TASK_ADD, {.level = 1, .min_digits = 18, .digits = 18}},
                {TASK_SUB, {.level = 1, .min_digits = 18, .digits = 18}},
                {TASK_MUL, {.level = 1, .min_digits = 9, .digits = 9}},
                {TASK_ARITHMETIC, {.level = 5, .min_digits = 9, .digits = 9, .items = 8}},
                {TASK_COUNTDOWN, {.level = 1, .min_digits = 1, .items = 6, .largest = 100}},
                {TASK_SORT, {.level = 1, .min_digits = 1, .items = 64, .largest = 9999}},
                {TASK_BRACKETS, {.level = 1, .min_digits = 1, .items = 64}},
                {TASK_BRACKETS, {.level = 1, .min_digits = 1, .items = 1}},
                {TASK_WORD, {.level = 1, .min_digits = 1, .items = 12, .largest = 9999}},
                {TASK_COUNTDOWN, {.level = 1, .min_digits = 1, .items = 2, .largest = 9}},
                {TASK_SORT, {.level = 1, .min_digits = 1, .items = 2, .largest = 2}}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        for (uint64_t k = 0; k < 8; k++) {
            TaskOptions o = good[i].o;
            o.style = TASK_SCRATCHPAD;
            assert_true(task_check(good[i].kind, names[good[i].kind], &o, &e));
            Random r = random_start(3, RANDOM_TASK + k);
            task_problem(&t, good[i].kind, &o, &r);
            assert_true(task_solve(&t, &o, k & 1, &r, &e));
            if (good[i].kind <= TASK_ARITHMETIC) compare_numbers(t.prompt.text, t.answer.text);
        }
    task_free(&t);
}

/* ---- the program ----------------------------------------------------------------------------------------------- */

static char directory[64];

static int setup(void **state) {
    (void)state;
    strcpy(directory, "/tmp/llmc_tasks.XXXXXX");
    if (access("data/make_tasks", X_OK)) fprintf(stderr, "data/make_tasks is not built\n");
    return !mkdtemp(directory);
}

static int teardown(void **state) {
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -r %s", directory);
    return system(command);
}

/* Runs data/make_tasks with `words`, in which %s is the test's directory, and returns its exit status. Its output goes
 * to the files out and err in that directory. */
PRINTF_LIKE(1, 2) static int run(const char *format, ...) {
    char words[600], command[900];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    snprintf(command, sizeof command, "./data/make_tasks %s >%s/out 2>%s/err", words, directory, directory);
    const int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static char *content(const char *name, size_t *n) {
    char path[200];
    Error e;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    char *text = file_slurp(path, 1 << 28, n, &e);
    if (!text) fail_msg("%s", e.text);
    return text;
}

static bool exists(const char *name) {
    char path[200];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return !access(path, F_OK);
}

static int compare_strings(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The problems of a JSONL file as sorted texts. The prompts must differ from one another. */
static char **problems(TaskKind kind, int n) {
    size_t bytes;
    char *text = content("out", &bytes), **problem = xcalloc((size_t)n, sizeof *problem),
         **prompt = xcalloc((size_t)n, sizeof *prompt);
    int i = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"), i++) {
        char key[1200];
        json_t *row = json_loads(line, 0, NULL);
        assert_true(row && i < n);
        prompt[i] = xstrdup(json_string_value(json_object_get(row, "prompt")));
        problem_of(kind, prompt[i], key);
        problem[i] = xstrdup(key);
        json_decref(row);
    }
    assert_int_equal(i, n);
    qsort(prompt, (size_t)n, sizeof *prompt, compare_strings);
    qsort(problem, (size_t)n, sizeof *problem, compare_strings);
    for (i = 1; i < n; i++) assert_int_not_equal(strcmp(prompt[i - 1], prompt[i]), 0);
    for (i = 0; i < n; i++) free(prompt[i]);
    free(prompt), free(text);
    return problem;
}

static void test_splits(void **state) {
    (void)state;
    for (int kind = 0; kind < TASK_BIGMUL; kind++) {
        const int held = kind == TASK_SORT ? 50 : 150, n = 10 * held, level = kind == TASK_SUB ? 3 : 2;
        assert_int_equal(run("--task %s --level %d --count %d --seed 1 --split heldout", names[kind],
                             kind == TASK_MUL ? 4 : level, held),
                         0);
        char **heldout = problems((TaskKind)kind, held);
        assert_int_equal(
            run("--task %s --level %d --count %d --seed 2 --split train", names[kind], kind == TASK_MUL ? 4 : level, n),
            0);
        char **train = problems((TaskKind)kind, n);
        for (int i = 0; i < held; i++)
            if (bsearch(&heldout[i], train, (size_t)n, sizeof *train, compare_strings))
                fail_msg("%s: '%s' is in both splits", names[kind], heldout[i]);
        for (int i = 0; i < n; i++) free(train[i]);
        for (int i = 0; i < held; i++) free(heldout[i]);
        free(train), free(heldout);
    }
    /* the two splits of a small space together contain all of it: 100 sums of digits, each of which the unsplit file
     * has once */
    int found;
    size_t n;
    assert_int_equal(run("--digits 1 --count 100 --split heldout"), 1);
    char *err = content("err", &n);
    assert_int_equal(sscanf(err, "make_tasks: add: no new problem in 200000 draws after %d records", &found), 1);
    free(err);
    assert_int_equal(run("--digits 1 --count %d --split heldout", found), 0);
    assert_int_equal(run("--digits 1 --count %d --split train", 101 - found), 1);
    assert_int_equal(run("--digits 1 --count %d --split train", 100 - found), 0);
    assert_int_equal(run("--digits 1 --count 100 --split all"), 0);
    assert_int_equal(run("--digits 1 --count 101 --split all"), 1);
    err = content("err", &n);
    assert_non_null(strstr(err, "add: no new problem in 200000 draws after 100 records"));
    free(err);
    assert_true(found > 2 && found < 25);
}

static void test_same_seed(void **state) {
    (void)state;
    static const char *const words[] = {"--task add:2,countdown,word,sort,brackets --level 3 --count 200 --seed 5",
                                        ("--task sub,mul,arithmetic --count 200 --seed 5 --format chat --noise 0.3 "
                                         "--style scratchpad"),
                                        "--task add --count 200 --seed 5 --as shard",
                                        "--task word --count 100 --format chat --as shard --template chatml"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n, m, k;
        assert_int_equal(run("%s", words[i]), 0);
        char *first = content("out", &n);
        assert_int_equal(run("%s", words[i]), 0);
        char *second = content("out", &m);
        assert_int_equal(run("%s --seed 6", words[i]), 0);
        char *other = content("out", &k);
        assert_int_equal(n, m);
        assert_memory_equal(first, second, n);
        assert_false(n == k && !memcmp(first, other, n));
        free(first), free(second), free(other);
    }
}

/* The mixture has the requested weights and the noise its requested fraction. The calculator confirms that the wrong
 * answers are wrong. */
static void test_mixture_and_noise(void **state) {
    (void)state;
    size_t n;
    int adds = 0, wrong = 0;
    assert_int_equal(run("--task add:3,sub:1 --digits 4 --count 2000 --format chat --noise 0.25 --style reversed"), 0);
    char *text = content("out", &n), *err = content("err", &n), stated[100];
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *row = json_loads(line, 0, NULL);
        const char *prompt = json_string_value(json_object_get(row, "prompt"));
        const char *completion = json_string_value(json_object_get(row, "completion"));
        assert_int_equal(json_object_size(row), 2);
        adds += strchr(prompt, '+') != NULL;
        long value = 0, place = 1;
        for (const char *c = completion + (*completion == '-'); *c; c++, place *= 10) value += (*c - '0') * place;
        wrong += calculate(prompt, '=') != (*completion == '-' ? -value : value);
        json_decref(row);
    }
    assert_true(abs(adds - 1500) < 100);
    assert_true(abs(wrong - 500) < 100);
    snprintf(stated, sizeof stated, "%d add, %d sub | %d deliberately wrong", adds, 2000 - adds, wrong);
    assert_non_null(strstr(err, stated));
    free(text), free(err);
}

/* A shard holds the same as the JSON lines. The mask covers the demonstration and the end of text. */
static void test_shards(void **state) {
    (void)state;
    Error e;
    Shard s;
    Record r = {0};
    Tokenizer bytes = {0};
    char path[200];
    size_t n;
    assert_int_equal(run("--task countdown,word --level 3 --count 50"), 0);
    char *text = content("out", &n), *save = NULL, *line = strtok_r(text, "\n", &save);
    assert_int_equal(run("--task countdown,word --level 3 --count 50 -o %s/p.shard.zst", directory), 0);
    snprintf(path, sizeof path, "%s/p.shard.zst", directory);
    if (!shard_open(&s, path, &e)) fail_msg("%s", e.text);
    assert_int_equal(s.kind, RECORD_PROMPT);
    assert_int_equal(s.count, 50);
    assert_int_equal(s.vocab, 260);
    assert_string_equal(s.chat_template, "plain");
    assert_true(tokenizer_load(&bytes, s.tokenizer, s.tokenizer_bytes, &e));
    for (int64_t i = 0; i < 50; i++, line = strtok_r(NULL, "\n", &save)) {
        json_t *row = json_loads(line, 0, NULL), *fields;
        assert_true(shard_record(&s, i, &r, &e));
        assert_int_equal(r.count, strlen(r.text));
        for (int32_t k = 0; k < r.count; k++) assert_int_equal(r.tokens[k], (unsigned char)r.text[k]);
        assert_string_equal(r.text, json_string_value(json_object_get(row, "prompt")));
        assert_string_equal(r.task, json_string_value(json_object_get(row, "task")));
        assert_string_equal(r.answer, json_string_value(json_object_get(row, "answer")));
        assert_non_null(fields = json_loads(r.fields, 0, NULL));
        json_object_del(row, "prompt");
        json_object_del(row, "task");
        json_object_del(row, "answer");
        assert_true(json_equal(row, fields));
        json_decref(row), json_decref(fields);
    }
    shard_close(&s), tokenizer_free(&bytes), free(text);
    assert_int_equal(run("--task add --count 50 --format chat -o %s/c.shard", directory), 0);
    snprintf(path, sizeof path, "%s/c.shard", directory);
    if (!shard_open(&s, path, &e)) fail_msg("%s", e.text);
    assert_int_equal(s.kind, RECORD_CHAT);
    for (int64_t i = 0; i < s.count; i++) {
        char line[100] = "";
        assert_true(shard_record(&s, i, &r, &e));
        assert_int_equal(r.tokens[r.count - 1], 256);
        bool answer = false;
        for (int32_t k = 0; k < r.count; k++) {
            assert_int_equal(r.mask[k], answer);
            if (r.tokens[k] < 256) line[k] = (char)r.tokens[k];
            answer |= r.tokens[k] == '=';
        }
        *strchr(line, '=') = 0;
        assert_true(calculate(line, 0) == atoi(line + strlen(line) + 1));
    }
    record_free(&r), shard_close(&s);
}

static void test_bad_command_lines(void **state) {
    (void)state;
    static const struct {
        const char *words;
        int status;
        const char *message;
    } cases[] = {{"--task addd", 2, "--task: 'addd' is not one of add|sub"},
                 {"--task add:0", 2, "weight of add must be a number above 0"},
                 {"--task add:x", 2, "weight of add"},
                 {"--task add,", 2, "'' is not one of"},
                 {"--task add,add", 2, "add is given twice"},
                 {"--level 6", 2, "out of range"},
                 {"--count 0", 2, "out of range"},
                 {"--style upside-down", 2, "is not one of"},
                 {"--style reversed --task sort", 2, "--style reversed: sort has no number"},
                 {"--task sort --digits 2", 2, "--digits: does not apply to sort"},
                 {"--task add --items 3", 2, "--items: 3 is out of range [2, 2] for add"},
                 {"--noise 0.5", 2, "--noise applies to demonstrations"},
                 {"--noise 2 --format chat", 2, "out of range"},
                 {"words", 2, "words: unexpected argument"},
                 {"--no-such", 2, "unknown"},
                 {"-o /no/such/place", 1, "/no/such/place"},
                 {"-o /dev/full", 1, "/dev/full"},
                 {"-o /dev/full --as shard", 1, "/dev/full"},
                 {"--as shard --tokenizer /no/such", 1, "/no/such"},
                 {"--as shard --template '{'", 1, "template"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n;
        const int status = run("%s", cases[i].words);
        char *err = content("err", &n), *newline = strchr(err, '\n');
        if (status != cases[i].status || !strstr(err, cases[i].message))
            fail_msg("%s: %d, %s", cases[i].words, status, err);
        assert_true(newline && !newline[1]);
        assert_int_equal(strncmp(err, "make_tasks: ", 12), 0);
        free(err);
        free(content("out", &n));
        assert_int_equal(n, 0);
    }
    /* a run that fails leaves an earlier file unchanged and no other file */
    assert_int_equal(run("--count 5 -o %s/kept.jsonl", directory), 0);
    size_t n, m;
    char *before = content("kept.jsonl", &n);
    assert_int_equal(run("--digits 1 --count 500 -o %s/kept.jsonl", directory), 1);
    char *after = content("kept.jsonl", &m);
    assert_true(n == m && !memcmp(before, after, n));
    free(before), free(after);
    assert_int_equal(run("--digits 1 --count 500 -o %s/never.shard", directory), 1);
    assert_false(exists("never.shard"));
    assert_int_equal(run("--help"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_answers),
                                       cmocka_unit_test(test_golden_demonstrations),
                                       cmocka_unit_test(test_countdown_solver),
                                       cmocka_unit_test(test_check),
                                       cmocka_unit_test(test_splits),
                                       cmocka_unit_test(test_same_seed),
                                       cmocka_unit_test(test_mixture_and_noise),
                                       cmocka_unit_test(test_shards),
                                       cmocka_unit_test(test_bad_command_lines)};
    return cmocka_run_group_tests_name("tasks", tests, setup, teardown);
}
