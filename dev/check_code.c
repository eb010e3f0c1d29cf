/* check_code.c - the long checks of the sandbox and of rewards that run programs; dev/check_code.sh builds and runs it.
 *
 *     build/check_code escapes bwrap          the programs of tests/code/escapes.txt: none may reach anything or stay
 *     build/check_code cheats bwrap           those of tests/code/cheats.txt, in every form of test
 *     build/check_code verdicts bwrap FILE    programs of dev/code_mutants.py: the verdict of a plain run
 *     build/check_code solutions bwrap FILE   the solutions in a file of HumanEval or MBPP: all pass
 *     build/check_code speed bwrap 2 400      400 completions on 2 workers, with and without the pool
 *
 * Exit status 1 if one of them fails.
 */
#include "../llmc/base/clock.h"              /* clock_seconds */
#include "../llmc/base/error.h"              /* die, Error, xcalloc, usage_error */
#include "../llmc/base/jsonl.h"              /* Jsonl, jsonl_close, jsonl_next, jsonl_open */
#include "../llmc/base/options.h"            /* option_choice_index */
#include "../llmc/reward/code_judge.h"       /* CodeJudge, code_judge_score, CodeOptions, CodeRow, ... */
#include "../llmc/reward/code_reward.h"      /* CodeVerdict, CODE_REWARD_ALL, code_reward */
#include "../llmc/reward/verify_answer.h"    /* RewardInput */
#include "../llmc/sandbox/sandbox.h"         /* SANDBOX_CHOICES, Sandbox, sandbox_close, sandbox_name, ... */
#include "../llmc/sandbox/sandbox_outcome.h" /* sandbox_outcome_name, SANDBOX_OUTCOMES, SANDBOX_FAILED, ... */
#include "../llmc/sandbox/sandbox_run.h"     /* SandboxRun, sandbox_run_end, SandboxProgram, sandbox_run_begin, ... */
#include "../tests/code.h"                   /* CodeSample, code_samples, code_samples_free */
#include <sys/prctl.h>
#include <sys/resource.h>

static Sandbox box;
static const double LIMIT = 1; /* seconds of a program that stays */

/* The number of processes that a program has left, by a word of their environment. */
static int left_over(void) {
    FILE *f = popen("grep -alz 'LLMC_STAYS=1' /proc/[0-9]*/environ 2>/dev/null | wc -l", "r");
    int count = -1;
    if (f && fscanf(f, "%d", &count) != 1) count = -1;
    if (f) pclose(f);
    return count;
}

static SandboxRun run_python(const char *source, double seconds) {
    SandboxRun r;
    const SandboxProgram p = {.language = "python", .source = source, .seconds = seconds};
    sandbox_run_begin(&box, &r, &p);
    while (!sandbox_run_step(&r)) sandbox_wait(&r.session, 0.01);
    return r;
}

/* The median time of a short program, in seconds. */
static double short_program(void) {
    double t[9];
    for (int i = 0; i < 9; i++) {
        SandboxRun r = run_python("print(1)", 10);
        t[i] = r.elapsed;
        sandbox_run_end(&box, &r);
        for (int k = i; k > 0 && t[k] < t[k - 1]; k--) {
            const double held = t[k];
            t[k] = t[k - 1];
            t[k - 1] = held;
        }
        usleep(100000);
    }
    return t[4];
}

static int escapes(void) {
    int n, failures = 0;
    double late = 0;
    CodeSample *all = code_samples("tests/code/escapes.txt", &n);
    if (!all) die("tests/code/escapes.txt: cannot be read; run this in the root of the repository");
    setenv("LLMC_SECRET", "1", 1);
    const double before = short_program();
    for (int i = 0; i < n; i++) {
        const double start = clock_seconds();
        SandboxRun r = run_python(all[i].text, all[i].stays ? LIMIT : 10);
        bool out = false;
        for (const char *line = r.output.text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
            out = out || !strncmp(line, "out", 3);
        const double over = r.elapsed - LIMIT;
        bool bad = out || r.outcome == SANDBOX_FAILED;
        if (all[i].stays) {
            bad = bad || over > 0.1;
            late = over > late ? over : late;
        }
        printf("%-50s %-12s %5.0f ms%s\n", all[i].name, sandbox_outcome_name(r.outcome),
               1e3 * (clock_seconds() - start), bad ? "  FAILED" : "");
        if (bad) printf("%s%s%s\n", r.output.text, r.errors.text, r.failure.text);
        failures += bad;
        sandbox_run_end(&box, &r);
        usleep(20000);
        if (left_over()) {
            printf("%s: FAILED: %d processes are left\n", all[i].name, left_over());
            failures++;
        }
    }
    printf(
        "%d programs, %d failures; the latest end was %.0f ms after its limit; a short program took %.1f ms before and %.1f ms "
        "after\n",
        n, failures, 1e3 * late, 1e3 * before, 1e3 * short_program());
    code_samples_free(all, n);
    return failures;
}

static const char *const cheat_forms[][2] = {
    {"calls of asserts", "{\"tests\":[\"assert f(3) == 10\",\"assert f(4) == 17\"]}"},
    {"calls with JSON", "{\"tests\":{\"inputs\":[\"3\",\"4\"],\"outputs\":[\"10\",\"17\"],\"fn_name\":\"f\"}}"},
    {"check function",
     "{\"test\":\"def check(candidate):\\n    assert candidate(3) == 10\\n    assert abs(candidate(4) - 17) < "
     "1e-6\",\"entry_point\":\"f\"}"},
    {"input and output", "{\"tests\":{\"inputs\":[\"3\\n\",\"4\\n\"],\"outputs\":[\"10\\n\",\"17\\n\"]}}"},
    {"weak asserts", "{\"tests\":[\"for n in (3, 4): assert f(n) == n * n + 1\"]}"}};

/* Every cheat in every form of test. Weak asserts may be defeated; those that do so are listed and are no failure. */
static int cheats(CodeJudge *j) {
    enum { FORMS = sizeof cheat_forms / sizeof *cheat_forms };
    Error e;
    int n, failures = 0, weak = 0;
    CodeSample *all = code_samples("tests/code/cheats.txt", &n);
    if (!all) die("tests/code/cheats.txt: cannot be read; run this in the root of the repository");
    for (int form = 0; form < FORMS; form++) {
        RewardInput in[64];
        CodeVerdict v[64];
        int counts[SANDBOX_OUTCOMES] = {0};
        for (int i = 0; i < n; i++) in[i] = (RewardInput){.completion = all[i].text, .fields = cheat_forms[form][1]};
        if (!code_judge_score(j, in, n, true, v, &e)) die("%s", e.text);
        for (int i = 0; i < n; i++) {
            counts[v[i].outcome]++;
            if (code_reward(&v[i], CODE_REWARD_ALL, 0) == 0) continue;
            printf("%s: %s: reward %g\n", cheat_forms[form][0], all[i].name, code_reward(&v[i], CODE_REWARD_ALL, 0));
            if (form == FORMS - 1) weak++;
            else failures++;
        }
        printf("%-18s", cheat_forms[form][0]);
        for (int i = 0; i < SANDBOX_OUTCOMES; i++)
            if (counts[i]) printf(" %s %d", sandbox_outcome_name((SandboxOutcome)i), counts[i]);
        printf("\n");
    }
    printf("%d cheats: %d got a reward where expected values stay outside, %d from weak asserts\n", n, failures, weak);
    code_samples_free(all, n);
    return failures;
}

/* Compares verdicts with those of the file, and counts the differences. */
static int verdicts(CodeJudge *j, const char *path) {
    Error e;
    Jsonl lines;
    json_t *row;
    int more, n = 0, right = 0, differences = 0;
    if (!jsonl_open(&lines, path, false, &e)) die("%s", e.text);
    while ((more = jsonl_next(&lines, &row, &e)) > 0) {
        const RewardInput in = {.completion = json_string_value(json_object_get(row, "completion")),
                                .fields = json_string_value(json_object_get(row, "fields"))};
        const bool want = json_is_true(json_object_get(row, "right"));
        CodeVerdict v;
        if (!code_judge_score(j, &in, 1, true, &v, &e)) die("%s", e.text);
        n++;
        right += want;
        if (code_reward(&v, CODE_REWARD_ALL, 0) == (float)want) continue;
        differences++;
        printf("%s, plain run %d:\n%s\n", sandbox_outcome_name(v.outcome), want, in.completion);
    }
    if (more < 0) die("%s", e.text);
    jsonl_close(&lines);
    printf("%d programs, %d right in a plain run; %d verdicts differ\n", n, right, differences);
    return differences;
}

/* Runs the solution that each row of a file has: the canonical_solution of HumanEval, the code of MBPP. Prints those that do
 * not pass, and how many tests are weak. Returns the number of those that do not pass. */
static int solutions(CodeJudge *j, const char *path) {
    Error e;
    Jsonl lines;
    json_t *row;
    int more, n = 0, failures = 0, tests = 0, weak = 0;
    const double start = clock_seconds();
    if (!jsonl_open(&lines, path, false, &e)) die("%s", e.text);
    while ((more = jsonl_next(&lines, &row, &e)) > 0) {
        const char *solution = json_string_value(json_object_get(row, "canonical_solution"));
        if (!solution) solution = json_string_value(json_object_get(row, "code"));
        if (!solution) die("%s: line %d: there is no canonical_solution and no code", path, n + 1);
        char *fields = json_dumps(row, JSON_COMPACT),
             *id = json_dumps(json_object_get(row, "task_id"), JSON_ENCODE_ANY);
        const RewardInput in = {
            .prompt = json_string_value(json_object_get(row, "prompt")), .completion = solution, .fields = fields};
        CodeVerdict v;
        if (!code_judge_score(j, &in, 1, true, &v, &e)) die("%s", e.text);
        const CodeRow *r = code_judge_row(j, &in, &e);
        if (!r) die("%s", e.text);
        n++;
        tests += v.tests;
        weak += r->weak;
        if (code_reward(&v, CODE_REWARD_ALL, 0) != 1) {
            failures++;
            printf("%s: %s, %d of %d tests\n", id ? id : "", sandbox_outcome_name(v.outcome), v.passed, v.tests);
        }
        free(fields), free(id);
    }
    if (more < 0) die("%s", e.text);
    jsonl_close(&lines);
    printf("%d solutions with %d tests, %d of them weak: %d do not pass; %.0f s\n", n, tests, weak, failures,
           clock_seconds() - start);
    return failures;
}

/* Processor seconds of this process and of all that it started and that have ended; their orphans are its children. */
static double processor_seconds(void) {
    double sum = 0;
    usleep(50000);
    while (waitpid(-1, NULL, WNOHANG) > 0) {}
    for (int i = 0; i < 2; i++) {
        struct rusage use;
        getrusage(i ? RUSAGE_CHILDREN : RUSAGE_SELF, &use);
        sum += (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
               1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
    }
    return sum;
}

/* Completions a second of different right programs with three tests. */
static void speed(CodeJudge *j, int n, const char *what) {
    Error e;
    char(*text)[128] = (char(*)[128])xcalloc((size_t)n, sizeof *text);
    RewardInput *in = (RewardInput *)xcalloc((size_t)n, sizeof *in);
    CodeVerdict *v = (CodeVerdict *)xcalloc((size_t)n, sizeof *v);
    static const char *const tests = "{\"tests\":[\"assert f(1) == 2\",\"assert f(2) == 5\",\"assert f(3) == 10\"]}";
    static int number;
    int passed = 0;
    for (int i = 0; i < n; i++) {
        snprintf(text[i], sizeof text[i], "def f(n):\n    return n * n + 1  # %d", number++);
        in[i] = (RewardInput){.completion = text[i], .fields = tests};
    }
    if (!code_judge_score(j, in, 1, true, v, &e)) die("%s", e.text); /* translates the tests */
    const double used = processor_seconds(), start = clock_seconds();
    const int64_t misses = j->sandbox.misses;
    if (!code_judge_score(j, in + 1, n - 1, true, v + 1, &e)) die("%s", e.text);
    const double wall = clock_seconds() - start, processor = processor_seconds() - used;
    for (int i = 0; i < n; i++) passed += v[i].outcome == SANDBOX_PASS;
    double run = 0;
    for (int i = 1; i < n; i++) run += v[i].seconds;
    printf(
        "%-9s %2lld workers, %-12s %6.1f completions/s, %5.1f ms of a processor and %5.1f ms in the sandbox each, %lld of %d "
        "waited; %d pass\n",
        sandbox_name(&j->sandbox), (long long)j->sandbox.o.workers, what, (n - 1) / wall, 1e3 * processor / (n - 1),
        1e3 * run / (n - 1), (long long)(j->sandbox.misses - misses), n - 1, passed);
    free(text), free(in), free(v);
}

int main(int argc, char **argv) {
    Error e;
    CodeOptions o = code_defaults();
    CodeJudge j;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (argc < 3) usage_error("escapes|cheats|verdicts|solutions|speed and bwrap|landlock|none are required");
    o.sandbox.kind = option_choice_index(SANDBOX_CHOICES, argv[2]);
    const bool solves = !strcmp(argv[1], "solutions"), compares = solves || !strcmp(argv[1], "verdicts");
    o.sandbox.workers = argc > 3 && !compares ? atoi(argv[3]) : 0;
    o.timeout = solves ? 30 : 2;
    o.total = 120;
    if (!strcmp(argv[1], "escapes")) {
        if (!sandbox_open(&box, &o.sandbox, &e)) die("%s", e.text);
        const int failures = escapes();
        sandbox_close(&box);
        return failures > 0;
    }
    if (!code_judge_open(&j, &o, &e)) die("%s", e.text);
    int failures = 0;
    if (compares && argc < 4)
        usage_error("verdicts: a file of dev/code_mutants.py is required; solutions: of HumanEval or MBPP");
    if (!strcmp(argv[1], "cheats")) failures = cheats(&j);
    else if (solves) failures = solutions(&j, argv[3]);
    else if (compares) failures = verdicts(&j, argv[3]);
    else {
        const int n = argc > 4 ? atoi(argv[4]) : 200;
        speed(&j, n, "with a pool");
        for (int i = 0; i < j.sandbox.ready; i++) sandbox_worker_close(&j.sandbox.pool[i]);
        j.sandbox.ready = j.sandbox.target = 0;
        speed(&j, n, "without");
    }
    code_judge_close(&j);
    return failures > 0;
}
