/* test_code.c - rewards of programs: which text is the program, values and outputs as Python and LiveCodeBench compare them,
 * the translation of asserts, every form of test with right and wrong programs, and programs that try to get a reward
 * otherwise. Without namespaces on this machine they run under Landlock, else without a sandbox. */

#include "../llmc/base/error.h"              /* Error */
#include "../llmc/base/text.h"               /* TextBuffer, text_free, text_string, text_format */
#include "../llmc/reward/code_extract.h"     /* CODE_LAST, code_defines, CODE_FIRST, CODE_ALL, ... */
#include "../llmc/reward/code_judge.h"       /* code_judge_score, CodeJudge, CodeOptions, CodeRow, ... */
#include "../llmc/reward/code_reward.h"      /* CodeVerdict, CODE_REWARD_ALL, code_reward */
#include "../llmc/reward/code_value.h"       /* code_value_equal, CodeCompare, code_output_equal */
#include "../llmc/reward/rewards.h"          /* rewards_open, Rewards, rewards_close, rewards_scorable, ... */
#include "../llmc/reward/verify_answer.h"    /* RewardInput, verify_span */
#include "../llmc/sandbox/sandbox.h"         /* SANDBOX_BWRAP, SANDBOX_NONE, Sandbox, sandbox_name, ... */
#include "../llmc/sandbox/sandbox_outcome.h" /* SANDBOX_PASS, SANDBOX_WRONG, SANDBOX_ERROR, ... */
#include "code.h"                            /* CodeSample, code_samples, code_samples_free */
#include "files.h"                           /* files_assert_error, files_directory, files_setup, ... */
#include "shards.h"                          /* refused */
#include "shell.h"                           /* run, assert_holds, said, put, ... */

static CodeJudge judge;

static int open_judge(void **state) {
    Error e;
    CodeOptions o = code_defaults();
    (void)state;
    o.timeout = 2;
    o.sandbox.workers = 2;
    for (o.sandbox.kind = SANDBOX_BWRAP; o.sandbox.kind <= SANDBOX_NONE; o.sandbox.kind++) {
        if (code_judge_open(&judge, &o, &e)) return 0;
        print_message("test_code: not under %s: %s\n", o.sandbox.kind ? "landlock" : "bwrap", e.text);
    }
    return 1;
}

static int close_judge(void **state) {
    (void)state;
    code_judge_close(&judge);
    return 0;
}

/* ---- the program in a completion ------------------------------------------------------------------------------------- */

static void extracts(const char *completion, const char *language, CodeExtract which, bool fenced, const char *want) {
    TextBuffer code = {0};
    const bool found = code_extract(verify_span(completion), language, which, fenced, &code);
    assert_int_equal(found, want != NULL);
    if (want) assert_string_equal(code.text, want);
    text_free(&code);
}

static void test_extract(void **state) {
    (void)state;
    const char *two = "First:\n```python\na = 1\n```\nthen\n```py\nb = 2\n```\nand output\n```text\nc\n```\n";
    extracts(two, "python", CODE_LAST, false, "b = 2\n");
    extracts(two, "python", CODE_FIRST, false, "a = 1\n");
    extracts(two, "python", CODE_ALL, false, "a = 1\nb = 2\n");
    extracts(two, "c", CODE_LAST, false, NULL);
    extracts("```c\nint x;\n```", "c", CODE_LAST, true, "int x;\n");
    extracts("```\nx\n", "python", CODE_LAST, true, "x\n"); /* an open block ends with the text */
    extracts("  ```Python3\n  x\n  ```", "python", CODE_LAST, true, "  x\n");
    extracts("\n    return 1", "python", CODE_LAST, false, "    return 1");
    extracts("    return 1", "python", CODE_LAST, true, NULL);
    extracts("```python\nold\n```</think>```python\nnew\n```", "python", CODE_FIRST, false, "new\n");
    extracts("x <answer>\n```\ny\n```</answer> ```\nz\n```", "python", CODE_LAST, false, "y\n");
    extracts("", "python", CODE_LAST, false, NULL);
    extracts(" \n ", "python", CODE_LAST, false, NULL);
    extracts("```python\n\n```", "python", CODE_LAST, false, NULL);
    extracts("````{.python}\nx\n````", "python", CODE_LAST, false, "x\n");
    assert_true(code_defines("import os\ndef f(x):\n  pass", "f"));
    assert_true(code_defines("f = lambda x: x", "f"));
    assert_true(code_defines("class f:\n  pass", "f"));
    assert_false(code_defines("def ff(x): pass\n    def f(): pass\nf == 1\ng = f", "f"));
}

/* ---- values and outputs ---------------------------------------------------------------------------------------------- */

static json_t *value(const char *text) {
    json_error_t why;
    json_t *v = json_loads(text, JSON_DECODE_ANY, &why);
    if (!v) fail_msg("%s: %s", text, why.text);
    return v;
}

static bool equal(const char *a, const char *b, bool loose) {
    const CodeCompare how = {.loose = loose};
    json_t *x = value(a), *y = value(b);
    const bool same = code_value_equal(x, y, &how);
    assert_int_equal(same, code_value_equal(y, x, &how));
    json_decref(x), json_decref(y);
    return same;
}

/* What Python's == says of these pairs. */
static void test_values(void **state) {
    (void)state;
    static const char *const same[][2] = {
        {"1", "true"},
        {"0", "[\"f\",\"-0x0.0p+0\"]"},
        {"1", "[\"f\",\"0x1.0000000000000p+0\"]"},
        {"\"a\"", "\"a\""},
        {"null", "null"},
        {"[\"l\",[1,[\"l\",[]]]]", "[\"l\",[true,[\"l\",[]]]]"},
        {"[\"s\",[1,2,3]]", "[\"s\",[3,1,2]]"},
        {"[\"d\",[[\"a\",1],[\"b\",2]]]", "[\"d\",[[\"b\",2],[\"a\",[\"f\",\"0x1p+0\"]]]]"},
        {"[\"i\",\"0x8000000000000000\"]", "[\"f\",\"0x1p+63\"]"},
        {"[\"i\",\"-0x100000000000000000000\"]", "[\"f\",\"-0x1p+80\"]"},
        {"-9223372036854775808", "[\"f\",\"-0x1p+63\"]"},
        {"[\"y\",\"00ff\"]", "[\"y\",\"00ff\"]"}};
    static const char *const other[][2] = {{"1", "2"},
                                           {"1", "\"1\""},
                                           {"[\"l\",[1]]", "[\"t\",[1]]"},
                                           {"[\"f\",\"nan\"]", "[\"f\",\"nan\"]"},
                                           {"9007199254740993", "[\"f\",\"0x1p+53\"]"}, /* 2^53 + 1 */
                                           {"9223372036854775807", "[\"f\",\"0x1p+63\"]"},
                                           {"[\"i\",\"0x8000000000000001\"]", "[\"f\",\"0x1p+63\"]"},
                                           {"null", "false"},
                                           {"[\"s\",[1,2]]", "[\"s\",[1,3]]"},
                                           {"[\"s\",[1]]", "[\"l\",[1]]"},
                                           {"[\"d\",[[\"a\",1]]]", "[\"d\",[[\"a\",2]]]"},
                                           {"[\"y\",\"00\"]", "\"00\""},
                                           {"[\"u\",\"eda080\"]", "\"eda080\""},
                                           {"[1,2]", "[1,2]"}, /* no value of the runner */
                                           {"{\"a\":1}", "{\"a\":1}"},
                                           {"1.5", "1.5"},
                                           {"[\"f\",\"1.5x\"]", "[\"f\",\"1.5x\"]"},
                                           {"[\"i\",\"0x01\"]", "[\"i\",\"0x01\"]"}};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (!equal(same[i][0], same[i][1], false)) fail_msg("%s and %s", same[i][0], same[i][1]);
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        if (equal(other[i][0], other[i][1], false)) fail_msg("%s and %s", other[i][0], other[i][1]);
    assert_true(equal("[\"l\",[[\"t\",[1]]]]", "[\"t\",[[\"l\",[1]]]]", true));
    TextBuffer deep = {0};
    for (int i = 0; i < 200; i++) text_string(&deep, "[\"l\",[");
    for (int i = 0; i < 200; i++) text_string(&deep, "]]");
    assert_false(equal(deep.text, deep.text, false));
    text_free(&deep);
}

static bool outputs(const char *got, const char *want, double tolerance) {
    return code_output_equal(verify_span(got), verify_span(want), tolerance);
}

static void test_outputs(void **state) {
    (void)state;
    assert_true(outputs("1 2\n3  \n\n", "1 2\n3", 0));
    assert_true(outputs("1.50\n", "1.5", 0));
    assert_true(outputs("1e2 -0", "100 0", 0));
    assert_true(outputs("  a   b", "a b", 0));
    assert_true(outputs("", "\n\n", 0));
    assert_true(outputs("007", "7.000", 0));
    assert_false(outputs("1\n2", "1 2", 0));
    assert_false(outputs("1.5000001", "1.5", 0));
    assert_true(outputs("1.5000001", "1.5", 1e-6));
    assert_false(outputs("1.50001", "1.5", 1e-6));
    assert_false(outputs("Yes", "yes", 0));
    assert_false(outputs("1\n\n2", "1\n2", 0));
    assert_false(outputs("0.1000000000000000055511151231257827", "0.1", 0)); /* exact decimals, no doubles */
    assert_false(outputs("1_0", "10", 0));
    assert_false(outputs("nan", "1", 1e-6));
    assert_false(outputs("1e", "1", 1e-6));
}

/* ---- the translation of asserts -------------------------------------------------------------------------------------- */

/* The tests of a row whose test is this text, and how many of them are weak. */
static int translated(const char *test, int *weak) {
    Error e;
    json_t *fields = json_pack("{s:[s]}", "tests", test);
    char *text = json_dumps(fields, 0);
    const RewardInput in = {.fields = text};
    const CodeRow *r = code_judge_row(&judge, &in, &e);
    if (!r) fail_msg("%s", e.text);
    const int count = r->why ? -1 : (int)json_array_size(r->tests);
    *weak = r->weak;
    free(text);
    json_decref(fields);
    return count;
}

static void test_translation(void **state) {
    (void)state;
    static const struct {
        const char *test;
        int tests, weak;
    } rows[] = {{"assert f(1) == 2", 1, 0},
                {"assert [1, 2] == f([3])", 1, 0},
                {"assert f(1) == 2 and f(2) == 3", 2, 0},
                {"assert f(1) is None", 1, 0},
                {"assert f(1)", 1, 0},
                {"assert not f(1)", 1, 0},
                {"assert f(1) != -2", 1, 0},
                {"assert abs(f(1) - 2.5) < 1e-6", 1, 0},
                {"assert math.isclose(f(1), 2.5, rel_tol=0.001)", 1, 0},
                {"assert set(f(1)) == set([1, 2])", 1, 0},
                {"assert f(1) in (1, 2)", 1, 0},
                {"assert sorted(f(1)) == [1, 2], 'message'", 1, 0},
                {"assert True\nassert f(1) == 1", 1, 0},
                {"assert f(1) == g(1)", 1, 1},
                {"assert f(1) == 2 or f(1) == 3", 1, 1},
                {"for i in range(3): assert f(i) == i", 1, 1},
                {"x = 2\nassert f(x) == 3", 1, 1},
                {"assert all(f(i) == i for i in range(3))", 1, 1},
                {"assert isinstance(f(1), int)", 1, 1},
                {"assert True", -1, 0},
                {"assert f(1) ==", -1, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int weak;
        const int tests = translated(rows[i].test, &weak);
        if (tests != rows[i].tests || weak != rows[i].weak)
            fail_msg("%s: %d tests, %d of them weak", rows[i].test, tests, weak);
    }
}

/* ---- forms ----------------------------------------------------------------------------------------------------------- */

static CodeVerdict verdict(const char *fields, const char *completion, bool stop) {
    Error e;
    CodeVerdict v;
    const RewardInput in = {
        .completion = completion, .fields = fields, .prompt = "def f(x):\n    \"\"\"Adds one.\"\"\"\n"};
    if (!code_judge_score(&judge, &in, 1, stop, &v, &e)) fail_msg("%s", e.text);
    return v;
}

static void judged(const char *fields, const char *completion, SandboxOutcome outcome, int passed, int tests) {
    const CodeVerdict v = verdict(fields, completion, false);
    if (v.outcome != outcome || v.passed != passed || v.tests != tests)
        fail_msg("%s: %s: %s, %d of %d", fields, completion, sandbox_outcome_name(v.outcome), v.passed, v.tests);
}

static const char *const ASSERTS = "{\"tests\":[\"assert f(1) == 2\",\"assert f(2) == 3\"],\"setup\":\"import math\"}";
static const char *const CHECK =
    "{\"test\":\"def check(candidate):\\n    assert candidate(1) == 2\\n    for i in range(3):\\n   "
    "     assert candidate(i) == i + 1\",\"entry_point\":\"f\"}";
static const char *const OUTPUTS = "{\"tests\":{\"inputs\":[\"1\\n\",[\"2\",\"\"]],\"outputs\":[\"2\\n\",\"3\"]}}";
static const char *const CALLS =
    "{\"tests\":{\"inputs\":[\"1\\n[2]\",\"2\\n[3]\"],\"outputs\":[\"[1,[2]]\",\"[2,[3]]\"],\"fn_name\":\"f\"}}";
static const char *const COMMAND =
    "{\"files\":{\"t.py\":\"import solution\\nassert solution.f(1) == 2\"},\"run\":\"python3 t.py\"}";
static const char *const IN_C = "{\"language\":\"c\",\"tests\":{\"inputs\":[\"1\"],\"outputs\":[\"2\"]}}";

static void test_forms(void **state) {
    (void)state;
    const char *right = "```python\ndef f(x):\n    return x + 1\n```", *half = "def f(x):\n    return 2";
    judged(ASSERTS, right, SANDBOX_PASS, 2, 2);
    judged(ASSERTS, half, SANDBOX_WRONG, 1, 2);
    judged(ASSERTS, "def f(x):\n    return math.floor(x) + 1", SANDBOX_PASS, 2, 2);
    judged(ASSERTS, "def f(x:", SANDBOX_COMPILE, 0, 2);
    judged(ASSERTS, "def f(x):\n    return 1 // 0", SANDBOX_ERROR, 0, 2);
    judged(ASSERTS, "def f(x):\n    return bytearray(1 << 34)", SANDBOX_MEMORY, 0, 2);
    judged(ASSERTS, "def f(x):\n    while x == 1: pass\n    return x + 1", SANDBOX_TIMEOUT, 1, 2); /* goes on */
    judged(ASSERTS, "", SANDBOX_NO_CODE, 0, 2);
    judged(ASSERTS, "class Solution:\n    f = 1", SANDBOX_ERROR, 0, 2);
    judged(CHECK, right, SANDBOX_PASS, 2, 2);
    judged(CHECK, "    return x + 1", SANDBOX_PASS, 2, 2); /* continues the prompt */
    judged(CHECK, half, SANDBOX_WRONG, 1, 2);
    judged(OUTPUTS, "print(int(input()) + 1)", SANDBOX_PASS, 2, 2);
    judged(OUTPUTS, "print(2)", SANDBOX_WRONG, 1, 2);
    judged(OUTPUTS, "print(int(input()) + 1); exit(1)", SANDBOX_ERROR, 0, 2);
    judged(CALLS, "def f(x, y):\n    return x, y", SANDBOX_PASS, 2, 2);
    judged(CALLS, "class Solution:\n    def f(self, x, y):\n        return [x, y]", SANDBOX_PASS, 2, 2);
    judged(COMMAND, right, SANDBOX_PASS, 1, 1);
    judged(COMMAND, half, SANDBOX_PASS, 1, 1);
    judged(COMMAND, "def f(x):\n    return x", SANDBOX_WRONG, 0, 1);
    judged(IN_C,
           "```c\n#include <stdio.h>\nint main(void) { int a; scanf(\"%d\", &a); printf(\"%d\\n\", a + 1); }\n```",
           SANDBOX_PASS, 1, 1);
    judged(IN_C, "int main(void) { return x; }", SANDBOX_COMPILE, 0, 1);
    judge.o.language = 1; /* tests that are Python cannot be run on a program in C */
    static const char *const python[] = {"{\"tests\":[\"assert f(3) == 4\"]}",
                                         "{\"tests\":{\"inputs\":[\"3\"],\"outputs\":[\"4\"],\"fn_name\":\"f\"}}",
                                         "{\"test\":\"def check(c):\\n    assert c(3) == 4\",\"entry_point\":\"f\"}"};
    for (size_t i = 0; i < sizeof python / sizeof *python; i++)
        assert_true(verdict(python[i], "int f(int x) { return x + 1; }", true).unscorable);
    judge.o.language = 0;
    const CodeVerdict first = verdict(ASSERTS, "def f(x):\n    return 7", true);
    assert_int_equal(first.run, 1);
    assert_true(verdict("{}", right, true).unscorable);
    assert_true(verdict("{\"tests\":3}", right, true).unscorable);
}

/* Rows as HumanEval and MBPP have them, with their solutions: what a solution may use, and wrong ones. */
static void test_published_rows(void **state) {
    (void)state;
    static const struct {
        const char *row, *right, *wrong;
        int tests;
    } cases[] = {
        {"{\"task_id\":\"HumanEval/0\",\"prompt\":\"from typing import List\\n\\n\\ndef total(numbers: List[int]) -> int:\\n"
         "    \\\"\\\"\\\" The sum.\\n    >>> total([1, 2])\\n    3\\n    \\\"\\\"\\\"\\n\",\"entry_point\":\"total\",\"test\":\"\\n\\n"
         "METADATA = {\\n    'author': 'x'\\n}\\n\\n\\ndef check(candidate):\\n    assert candidate([1, 2]) == 3\\n"
         "    assert candidate([]) == 0, \\\"empty\\\"\\n    assert abs(candidate([5]) - 5) < 1e-6\\n\\n\"}",
         "    s = 0\n    for x in numbers:\n        s += x\n    return s\n", "    return sum(numbers) - 1\n", 3},
        {"{\"text\":\"Count.\",\"task_id\":88,\"test_setup_code\":\"\",\"test_list\":[\"assert count([1,1,2])==({1: 2, 2: 1})\"],"
         "\"challenge_test_list\":[]}",
         "import collections\r\ndef count(l):\r\n  count= collections.Counter(l)\r\n  return count",
         "import collections\ndef count(l):\n  return collections.Counter(l + [1])", 1},
        {"{\"text\":\"Group.\",\"task_id\":653,\"test_list\":[\"assert group([(1, 2), (1, 3)]) == {1: [2, 3]}\"]}",
         "from collections import defaultdict\ndef group(l):\n  d = defaultdict(list)\n  for k, v in l: d[k].append(v)\n  return d",
         "from collections import OrderedDict\ndef group(l):\n  return OrderedDict(l)", 1},
        {"{\"text\":\"Match.\",\"task_id\":737,\"test_list\":[\"assert vowel('annie')\",\"assert not vowel('dawood')\"]}",
         "import re\ndef vowel(s):\n  return re.search('^[aeiou]', s)",
         "import re\ndef vowel(s):\n  return re.search('n|d', s)", 2},
        {"{\"text\":\"Height.\",\"task_id\":927,\"test_setup_code\":\"root = Node(1)\\r\\nroot.left = Node(2)\","
         "\"test_list\":[\"assert (height(root)) == 2\"]}",
         "class Node:\n  def __init__(self, x):\n    self.x, self.left = x, None\ndef height(n):\n  return height(n.left) + 1 if n else 0",
         "class Node:\n  def __init__(self, x):\n    self.x, self.left = x, None\ndef height(n):\n  return 1", 1},
        {"{\"prompt\":\"Area.\",\"task_id\":82,\"test_imports\":[\"import math\",\"from collections import deque\"],"
         "\"test_list\":[\"assert math.isclose(area(2), 12.566370614359172, rel_tol=0.001)\",\"assert area(deque()) == 0\"]}",
         "def area(r):\n  return 3.14159 * r * r if r else 0", "def area(r):\n  return 6.28 * r if r else 1", 2},
        {"{\"text\":\"Root.\",\"test_imports\":[\"import math\"],\"test_setup_code\":\"four = Box(math.sqrt(16))\","
         "\"test_list\":[\"assert root(four) == math.sqrt(4)\"]}",
         "class Box:\n  def __init__(self, x):\n    self.x = x\ndef root(b):\n  return b.x ** 0.5",
         "class Box:\n  def __init__(self, x):\n    self.x = x\ndef root(b):\n  return b.x", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error e;
        CodeVerdict v;
        json_t *row = json_loads(cases[i].row, 0, NULL);
        assert_non_null(row);
        RewardInput in = {.prompt = json_string_value(json_object_get(row, "prompt")), .fields = cases[i].row};
        in.completion = cases[i].right;
        assert_true(code_judge_score(&judge, &in, 1, false, &v, &e));
        if (v.outcome || v.passed != cases[i].tests || v.tests != cases[i].tests)
            fail_msg("row %zu: %s, %d of %d", i, sandbox_outcome_name(v.outcome), v.passed, v.tests);
        in.completion = cases[i].wrong;
        assert_true(code_judge_score(&judge, &in, 1, false, &v, &e));
        assert_int_equal(v.outcome, SANDBOX_WRONG);
        assert_true(v.passed < v.tests);
        json_decref(row);
    }
    /* the same through a shard, as make_shard reads the files */
    put("humaneval.jsonl",
        "{\"task_id\":\"HumanEval/0\",\"prompt\":\"def f(x):\\n\",\"entry_point\":\"f\",\"canonical_solution\":"
        "\"    return x\",\"test\":\"def check(candidate):\\n    assert candidate(1) == 1\"}\n");
    put("mbpp.jsonl", "{\"text\":\"Write f.\",\"code\":\"def f(x): return x\",\"task_id\":1,\"test_setup_code\":\"\","
                      "\"test_list\":[\"assert f(1) == 1\"],\"challenge_test_list\":[]}\n");
    run(0,
        "./data/make_shard -q -i $T/humaneval.jsonl -o $T/h.shard --kind prompt --task code && ./evaluate --audit-tests -i $T/h.shard --sandbox none");
    assert_holds(said, "1 prompts with 1 tests, 0.0 % of them weak");
    run(0,
        "./data/make_shard -q -i $T/mbpp.jsonl -o $T/m.shard --prompt-field text --task code && ./evaluate --audit-tests -i $T/m.shard --sandbox none");
    assert_holds(said, "1 prompts with 1 tests, 0.0 % of them weak");
}

/* Rewards from verdicts: all, a share, a threshold; the part of --reward, and a task of verify. */
static void test_rewards_of_code(void **state) {
    (void)state;
    Error e;
    Rewards r;
    const RewardInput in[3] = {{.task = "code", .fields = ASSERTS, .completion = "def f(x):\n    return 2"},
                               {.task = "code", .fields = ASSERTS, .completion = "def f(x):\n    return x + 1"},
                               {.task = "add", .answer = "3", .completion = "3"}};
    float parts[3][4], total[3];
    assert_true(rewards_open(&r, "verify,code=fraction,code=threshold/0.5,code:0.5", NULL, 1, 1, 10, &e));
    r.code = &judge.scorer;
    assert_true(rewards_score(&r, in, 3, parts[0], total, &e));
    assert_true(parts[0][0] == 0 && parts[0][1] == 0.5f && parts[0][2] == 1 && parts[0][3] == 0);
    assert_true(parts[1][0] == 1 && parts[1][1] == 1 && parts[1][2] == 1 && parts[1][3] == 1);
    assert_true(parts[2][0] == 1 && isnan(parts[2][1]) && isnan(parts[2][3]));
    assert_true(total[1] == 3.5f);
    assert_string_equal(r.name[2], "code_2");
    bool scorable;
    const RewardInput empty = {.task = "code", .fields = ASSERTS};
    assert_true(rewards_scorable(&r, &empty, &scorable, &e));
    assert_true(scorable);
    rewards_close(&r);
    static const char *const bad[] = {"code=some", "code=threshold/0", "code=threshold/2", "code=all/1", "code="};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(rewards_open(&r, bad[i], NULL, 1, 1, 10, &e));
        files_assert_error(&e, "reward code");
    }
}

/* A sandbox that does not start gives no reward, and says why; the next completion is scored as ever. */
static void test_machine_failure(void **state) {
    (void)state;
    const char *program = "def f(x):\n    return x + 1  # not seen before";
    Sandbox *s = &judge.sandbox;
    if (s->kind != SANDBOX_BWRAP) skip();
    assert_int_equal(verdict(ASSERTS, "def f(x):\n    return x", true).outcome,
                     SANDBOX_WRONG); /* translates the tests */
    char *bwrap = s->bwrap;
    const int target = s->target;
    while (s->ready) sandbox_worker_close(&s->pool[--s->ready]);
    s->target = 0;
    s->bwrap = (char *)"/bin/false";
    const CodeVerdict v = verdict(ASSERTS, program, true);
    s->bwrap = bwrap;
    s->target = target;
    assert_int_equal(v.outcome, SANDBOX_FAILED);
    assert_true(v.unscorable && isnan(code_reward(&v, CODE_REWARD_ALL, 0)));
    assert_string_equal(judge.failure.text, "did not start");
    assert_int_equal(verdict(ASSERTS, program, true).outcome, SANDBOX_PASS);
}

/* No program of the corpus gets a reward without solving the task. */
static void test_cheats(void **state) {
    (void)state;
    static const char *const forms[] = {
        "{\"tests\":[\"assert f(3) == 10\",\"assert f(4) == 17\"]}",
        "{\"tests\":{\"inputs\":[\"3\\n\",\"4\\n\"],\"outputs\":[\"10\\n\",\"17\\n\"]}}"};
    Error e;
    int n = 0;
    CodeSample *all = code_samples("tests/code/cheats.txt", &n);
    assert_non_null(all);
    assert_true(n >= 25);
    judge.o.timeout = 0.5;
    for (int form = 0; form < 2; form++) {
        RewardInput in[64];
        CodeVerdict v[64];
        for (int i = 0; i < n; i++) in[i] = (RewardInput){.completion = all[i].text, .fields = forms[form]};
        if (!code_judge_score(&judge, in, n, true, v, &e)) fail_msg("%s", e.text);
        for (int i = 0; i < n; i++)
            if (code_reward(&v[i], CODE_REWARD_ALL, 0) != 0)
                fail_msg("form %d: %s: %s", form, all[i].name, sandbox_outcome_name(v[i].outcome));
    }
    judge.o.timeout = 2;
    code_samples_free(all, n);
}

/* ---- programs -------------------------------------------------------------------------------------------------------- */

static void test_make_shard(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"\"tests\":3", "line 2: field 'tests': is a number, must be a list of asserts"},
        {"\"tests\":[]", "line 2: field 'tests': is an empty list"},
        {"\"tests\":[\"assert f()\",1]", "line 2: field 'tests': has an item 2 that is no text"},
        {"\"tests\":{\"inputs\":[\"1\",\"2\"],\"outputs\":[\"1\"]}", "has 2 inputs and 1 outputs"},
        {"\"tests\":{\"inputs\":[1],\"outputs\":[\"1\"]}", "has an item 1 of inputs that is no text"},
        {"\"test\":\"def check(c): pass\"", "line 2: field 'entry_point': is absent"},
        {"\"test\":\"print(1)\",\"entry_point\":\"f\"",
         "line 2: field 'test': is a text, must be a text with the function"},
        {"\"files\":{\"a/b\":\"\"},\"run\":\"make\"", "line 2: field 'files': has a file 'a/b'"},
        {"\"files\":{\"..\":\"\"},\"run\":\"make\"", "line 2: field 'files': has a file '..'"},
        {"\"files\":{\"a\":\"\"}", "line 2: field 'run': is absent"},
        {"\"tests\":[\"x\"],\"language\":\"rust\"", "line 2: field 'language': is 'rust', must be python or c"},
        {"\"tests\":[\"x\"],\"language\":\"c\"", "line 2: field 'language': is 'c'"},
        {"\"tests\":[\"x\"],\"test\":\"def check(c): 1\",\"entry_point\":\"f\"",
         "line 2: field 'test': is given together with the field 'tests'"},
        {"\"tests\":[\"x\"],\"setup\":1", "line 2: field 'setup': is a number, must be a text"},
        {"\"tests\":[\"x\"],\"test_imports\":\"import re\"",
         "line 2: field 'test_imports': is a text, must be a list of import statements"},
        {"\"tests\":[\"x\"],\"test_imports\":[\"import re\",1]",
         "line 2: field 'test_imports': has an item 2 that is no text, must be a list of import statements"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        TextBuffer text = {0};
        text_format(
            &text,
            "{\"prompt\":\"a\",\"task\":\"code\",\"tests\":[\"assert f(1)\"]}\n{\"prompt\":\"b\",\"task\":\"code\",%s}\n",
            rows[i][0]);
        put("bad.jsonl", text.text);
        refused(1, "./data/make_shard -i $T/bad.jsonl -o $T/x.shard", rows[i][1]);
        text_free(&text);
    }
}

/* scripts/livecodebench.py reads pickled texts and no functions. */
static void test_livecodebench(void **state) {
    (void)state;
    put("rows.py",
        "import base64, json, os, pickle, zlib\n"
        "class Hostile:\n"
        "    def __reduce__(self): return os.system, ('echo reached >$T/reached',)\n"
        "def row(private, name, **more):\n"
        "    text = base64.b64encode(zlib.compress(pickle.dumps(private))).decode()\n"
        "    public = [{'input': '1\\n2', 'output': '3', 'testtype': 'functional'}]\n"
        "    print(json.dumps(dict(question_content='Add.', public_test_cases=json.dumps(public), private_test_cases=text,\n"
        "                          metadata=json.dumps({'func_name': name} if name else {}), **more)))\n"
        "case = json.dumps([{'input': '5\\n6', 'output': '11', 'testtype': 'functional'}])\n"
        "row(case, None)\n"
        "row(case, 'add', starter_code='class Solution:')\n"
        "row(Hostile(), None)\n");
    run(1, "python3 $T/rows.py | python3 scripts/livecodebench.py >$T/rows.jsonl");
    assert_holds(said, "a private test names ");
    run(1, "test -e $T/reached");
    run(0, "cat $T/rows.jsonl; data/make_shard -q -i $T/rows.jsonl -o $T/x.shard");
    assert_string_equal(
        out, "{\"prompt\": \"Add.\", \"task\": \"code\", \"tests\": {\"inputs\": [\"1\\n2\", \"5\\n6\"], \"outputs\": "
             "[\"3\", \"11\"]}}\n"
             "{\"prompt\": \"Add.\\n\\nclass Solution:\", \"task\": \"code\", \"tests\": {\"inputs\": [\"1\\n2\", "
             "\"5\\n6\"], \"outputs\": [\"3\", \"11\"], \"fn_name\": \"add\"}}\n");
}

/* A field of tests that a row's form does not read is named; an empty one, and one that it reads, are not. */
static void test_unread_fields(void **state) {
    (void)state;
    static const char *const rows[][3] = {
        {"\"tests\":{\"inputs\":[\"1\"],\"outputs\":[\"1\"]},\"setup\":\"import math\"", "'setup'"},
        {"\"run\":\"make\",\"test_setup_code\":\"x = 1\"", "'test_setup_code'"},
        {"\"tests\":[\"x\"],\"test_list\":[\"y\"]", "'test_list'"},
        {"\"tests\":[\"x\"],\"setup\":\"\",\"test_setup_code\":\"x = 1\"", "'test_setup_code'"},
        {"\"tests\":[\"x\"],\"entry_point\":\"f\",\"fn_name\":\"f\"", "'entry_point'", "'fn_name'"},
        {"\"tests\":[\"x\"],\"run\":\"make\",\"files\":{\"a\":\"b\"}", "'run'", "'files'"},
        {"\"run\":\"make\",\"test_imports\":[\"import re\"],\"challenge_test_list\":[\"y\"]", "'test_imports'",
         "'challenge_test_list'"},
        {"\"tests\":[\"x\"],\"use_all\":true,\"tolerance\":0.1", "'use_all'", "'tolerance'"}};
    char text[400];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(text, sizeof text, "{\"prompt\":\"a\",\"task\":\"code\",%s}\n", rows[i][0]);
        put("unread.jsonl", text);
        run(0, "./data/make_shard -i $T/unread.jsonl -o $T/x.shard");
        for (int k = 1; k < 3 && rows[i][k]; k++) {
            snprintf(text, sizeof text, "records with a field %s that the check of their task does not read: 1",
                     rows[i][k]);
            assert_holds(said, text);
        }
    }
    put("read.jsonl",
        "{\"prompt\":\"a\",\"task\":\"code\",\"test_list\":[\"x\"],\"test_setup_code\":\"x = 1\",\"test_imports\":[\"import re\"],"
        "\"challenge_test_list\":[],\"level\":1}\n"
        "{\"prompt\":\"b\",\"task\":\"code\",\"test\":\"def check(c): 1\",\"entry_point\":\"f\",\"setup\":\"x = 1\"}\n"
        "{\"prompt\":\"c\",\"task\":\"code\",\"tests\":{\"inputs\":[\"1\"],\"outputs\":[\"1\"]},\"fn_name\":\"f\","
        "\"setup\":\"x = 1\",\"files\":{},\"run\":null}\n"
        "{\"prompt\":\"d\",\"task\":\"code\",\"run\":\"make\",\"files\":{\"a\":\"b\"},\"setup\":\"\"}\n");
    run(0, "./data/make_shard -i $T/read.jsonl -o $T/x.shard");
    assert_null(strstr(said, "does not read"));
}

static void test_audit(void **state) {
    (void)state;
    put("audit.jsonl", "{\"prompt\":\"a\",\"task\":\"code\",\"tests\":[\"assert f(1) == 2\"]}\n"
                       "{\"prompt\":\"b\",\"task\":\"code\",\"tests\":[\"assert g(1) is None\"]}\n"
                       "{\"prompt\":\"c\",\"task\":\"code\",\"tests\":{\"inputs\":[\"1\"],\"outputs\":[\"\"]}}\n"
                       "{\"prompt\":\"d\",\"task\":\"code\"}\n");
    char command[200];
    run(0, "./data/make_shard -q -i $T/audit.jsonl -o $T/audit.shard");
    snprintf(command, sizeof command, "./evaluate --audit-tests -i $T/audit.shard --sandbox %s",
             sandbox_name(&judge.sandbox));
    run(0, command);
    assert_holds(out,
                 "\"audit\":[{\"completions\":[\"return None\"],\"index\":1},{\"completions\":[\"pass\",\"exit(0)\"],"
                 "\"index\":2}]");
    assert_holds(said, "record 3: it has no tests");
    assert_holds(said, "2 of 4 prompts have tests that a program which solves nothing passes");
    run(2, "./evaluate --audit-tests -c x.bin -i $T/audit.shard");
    assert_holds(said, "--audit-tests: needs no model");
    run(2, "./evaluate --audit-tests --num-samples 4 -i $T/audit.shard");
    assert_holds(said, "--num-samples: not used with --audit-tests");
}

static int setup(void **state) { return files_setup(state) || setenv("T", files_directory, 1); }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_extract),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_outputs),
        cmocka_unit_test_setup_teardown(test_translation, open_judge, close_judge),
        cmocka_unit_test_setup_teardown(test_forms, open_judge, close_judge),
        cmocka_unit_test_setup_teardown(test_published_rows, open_judge, close_judge),
        cmocka_unit_test_setup_teardown(test_rewards_of_code, open_judge, close_judge),
        cmocka_unit_test_setup_teardown(test_machine_failure, open_judge, close_judge),
        cmocka_unit_test_setup_teardown(test_cheats, open_judge, close_judge),
        cmocka_unit_test(test_make_shard),
        cmocka_unit_test(test_livecodebench),
        cmocka_unit_test(test_unread_fields),
        cmocka_unit_test_setup_teardown(test_audit, open_judge, close_judge),
    };
    return cmocka_run_group_tests(tests, setup, files_teardown);
}
