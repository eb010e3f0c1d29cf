/* test_rewards.c - the verifiers on constructed right and wrong answers, the shapers against TRL's values, the grammar
 * of the specification, and every failure of the reward program's protocol. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/clock.h"            /* clock_seconds */
#include "../llmc/base/error.h"            /* Error, xcalloc, xmalloc */
#include "../llmc/base/random.h"           /* Random, random_between, random_start */
#include "../llmc/reward/reward_command.h" /* reward_parse, reward_command_line */
#include "../llmc/reward/rewards.h"        /* rewards_score, rewards_close, rewards_open, Rewards, ... */
#include "../llmc/reward/verify.h"         /* reward_final_answer, rewards_verify, rewards_answer, ... */
#include "../llmc/reward/verify_answer.h"  /* RewardInput */
#include "../llmc/sandbox/sandbox.h"       /* SandboxOptions, SANDBOX_LANDLOCK, SANDBOX_NONE, sandbox_defaults */
#include "golden.h"                        /* golden, golden_count, Golden, golden_free, ... */

#define COUNT(array) (sizeof(array) / sizeof *(array))

static void assert_message(const Error *e, const char *part) {
    assert_true(strlen(e->text) > 10);
    assert_null(strchr(e->text, '\n'));
    if (!strstr(e->text, part)) fail_msg("\"%s\" does not hold \"%s\"", e->text, part);
}

static float verify(const char *task, const char *completion, const char *answer, const char *fields) {
    const RewardInput in = {.task = task, .completion = completion, .answer = answer, .fields = fields};
    float score = -1;
    assert_true(rewards_verify(&in, &score));
    return score;
}

/* ---- verifiers ------------------------------------------------------------------------------------------------- */

#define NONE (-1) /* cannot be scored */

static void test_planted(void **state) {
    (void)state;
    static const char numbers[] = "{\"numbers\":[3,4,5,5],\"target\":35}", reversed[] = "{\"style\":\"reversed\"}",
                      scratchpad[] = "{\"style\":\"scratchpad\",\"level\":2}";
    static const struct {
        const char *task, *completion, *answer, *fields;
        int score;
    } cases[] = {
        /* numbers: the last one counts */
        {"add", "46", "46", "", 1},
        {"add", "46\n", "46", "", 1},
        {"add", " 12+34=46", "46", NULL, 1},
        {"add", "046", "46", "", 1},
        {"add", "46.0", "46", "", 1},
        {"add", "4 6", "46", "", 0},
        {"add", "46 47", "46", "", 0},
        {"add", "46\n12+35=47", "46", "", 0},
        {"add", "44 45 46", "46", "", 1},
        {"add", "146", "46", "", 0},
        {"add", "460", "46", "", 0},
        {"add", "-46", "46", "", 0},
        {"add", "", "46", "", 0},
        {"add", "forty-six", "46", "", 0},
        {"add", "46", "", "", NONE},
        {"add", "46", "?", "", NONE},
        {"sub", "-22", "-22", "", 1},
        {"sub", "12-34=-22", "-22", "", 1},
        {"sub", "22", "-22", "", 0},
        {"sub", "\u221222", "-22", "", 1},
        {"sub", "0", "0", "", 1},
        {"sub", "-0", "0", "", 1},
        {"sub", "5-3", "3", "", 0}, /* an unfinished subtraction */
        {"sub", "5-3", "-3", "", 0},
        {"sub", "(5)-3", "-3", "", 0},
        {"sub", "covid-19", "19", "", 1},
        {"mul", "1,234,567", "1234567", "", 1},
        {"mul", "1{,}234", "1234", "", 1},
        {"mul", "1,23", "23", "", 1},
        {"mul", "1,2345", "12345", "", 0},
        {"mul", "12345678901234567890123456789012345678901234567890",
         "12345678901234567890123456789012345678901234567890", "", 1},
        {"mul", "12345678901234567890123456789012345678901234567891",
         "12345678901234567890123456789012345678901234567890", "", 0},
        {"arithmetic", "84/2", "42", "", 0}, /* unfinished */
        {"arithmetic", "42/1", "42", "", 0},
        {"numeric", "1/2", "0.5", "", 1},
        {"numeric", "0.50", "1/2", "", 1},
        {"numeric", "2/4", "1/2", "", 1},
        {"numeric", "-1/2", "-.5", "", 1},
        {"numeric", "1/3", "0.3333333333", "", 0},
        {"numeric", "1 / 3", "2/6", "", 1},
        {"numeric", "1/0", "0", "", 0},
        {"numeric", "0/5", "0", "", 0},
        {"numeric", "\\boxed{\\frac{1}{3}}", "1/3", "", 1},
        {"numeric", "-\\dfrac{7}{4} is it", "-1.75", "", 1},
        {"numeric", "\\frac{7}{", "7", "", 0},
        {"numeric", "so \\boxed{42}. Check: 6*7=43", "42", "", 1},
        {"numeric", "\\boxed{41} no, \\boxed{42}", "42", "", 1},
        {"numeric", "\\boxed{42} no, \\boxed{41}", "42", "", 0},
        {"numeric", "\\boxed{42", "42", "", 1}, /* never closed: treated as unmarked text */
        {"numeric", "\\boxed{x=\\text{about }42} 7", "42", "", 1},
        {"numeric", "$1,234.50", "1234.5", "", 1},
        {"numeric", "-$5", "-5", "", 1},
        {"numeric", "\\$-5", "-5", "", 1},
        {"numeric", "50%", "50", "", 1},
        {"numeric", "The answer is 42.", "42", "", 1},
        {"numeric", "1e3", "1000", "", 1},
        {"numeric", "12.5e-1", "1.25", "", 1},
        {"numeric", "1e999999999999", "1", "", 0},
        {"numeric", "3.14", "3.14159", "", 0},
        {"numeric", "<think>42</think>41", "42", "", 0},
        {"numeric", "<think>41</think> 42", "42", "", 1},
        {"numeric", "<think>42", "42", "", 1},
        {"numeric", "<answer>42</answer> or 43", "42", "", 1},
        {"numeric", "<answer>43</answer><answer>42", "42", "", 1},
        {"numeric", "x", "nothing", "", NONE},
        /* reversed digits */
        {"add", "64", "46", reversed, 1},
        {"add", "46", "46", reversed, 0},
        {"add", "064", "460", reversed, 1},
        {"add", "64", "460", reversed, 0},
        {"add", "521", "125", reversed, 1},
        {"sub", "-22", "-22", reversed, 1},
        {"sub", "-21", "-12", reversed, 1},
        {"mul", "0", "0", reversed, 1},
        {"add", "6,400", "46", reversed, 0},
        {"add", "6.4", "46", reversed, 0},
        {"add", "6/4", "46", reversed, 0},
        /* work first */
        {"add", "7+8=15\n5+6+1=12\n#### 125", "125", scratchpad, 1},
        {"add", "7+8=15\n5+6+1=12\n125", "125", scratchpad, 0},
        {"add", "7+8=15", "15", scratchpad, 0},
        /* GSM8K */
        {"word", "3*4=12\n#### 12", "12", "", 1},
        {"word", "12", "12", "", 0},
        {"word", "#### 12", "He has 3*4=<<3*4=12>>12.\n#### 12", "", 1},
        {"gsm8k", "#### 1,200", "1200", "", 1},
        {"gsm8k", "#### $12 (3*4)", "12", "", 1},
        {"gsm8k", "####\n12", "12", "", 0},
        {"gsm8k", "#### 11\n#### 12", "12", "", 1},
        {"gsm8k", "#### 12\n#### 11", "12", "", 0},
        {"gsm8k", "#### twelve", "12", "", 0},
        {"gsm8k", "#### 24/2", "12", "", 0},
        {"gsm8k", "### 12", "12", "", 0},
        /* countdown */
        {"countdown", "(3+4)*5", "35", numbers, 1},
        {"countdown", "5*(4+3)=35", "35", numbers, 1},
        {"countdown", "(3+4)*5 = 36", "35", numbers, 0},
        {"countdown", "(3+4)*5", "35", "{\"numbers\":[3,4,5,5],\"use_all\":true}", 0},
        {"countdown", "(3+4)*5+5-5", "35", "{\"numbers\":[3,4,5,5,5],\"use_all\":true}", 1},
        {"countdown", "work: 3+4=7\n7*5=35\n#### (3+4)*5", "35", numbers, 1},
        {"countdown", "Answer: (3 + 4) \u00d7 5.", "35", numbers, 1},
        {"countdown", "<answer>(3+4)*5</answer>", "35", numbers, 1},
        {"countdown", "(3+4)*(5*5/5)", "35", numbers, 0}, /* three fives */
        {"countdown", "(3+4)*5+5-5", "35", numbers, 0},
        {"countdown", "5*5+(3+4)", "35", numbers, 0},
        {"countdown", "5*7", "35", numbers, 0},
        {"countdown", "35", "35", numbers, 0},
        {"countdown", "", "35", numbers, 0},
        {"countdown", "(3+4)5", "35", numbers, 0},
        {"countdown", "(3+4)**5", "35", numbers, 0},
        {"countdown", "(3+4)*5)", "35", numbers, 0},
        {"countdown", "((3+4)*5", "35", numbers, 0},
        {"countdown", "(3+4)*5 hours", "35", numbers, 0},
        {"countdown", "(3+4)*5=35=35", "35", numbers, 0},
        {"countdown", "3/(4-4)", "35", "{\"numbers\":[3,4,4],\"target\":35}", 0},
        {"countdown", "8/(3-8/3)", "24", "{\"nums\":[3,3,8,8],\"target\":24}", 1}, /* needs fractions */
        {"countdown", "-3+5", "2", "{\"numbers\":[3,5]}", 1},
        {"countdown", "1/2", "0.5", "{\"numbers\":[1,2]}", 1},
        {"countdown", "1/2", "1/2", "{\"numbers\":[1,2]}", 1},
        {"countdown", "9223372036854775807+9223372036854775807", "-2",
         "{\"numbers\":[9223372036854775807,9223372036854775807]}", 0},
        {"countdown", "99999999999999999999", "1", numbers, 0},
        {"countdown", "4.0*5", "20", "{\"numbers\":[4,5]}", 0},
        {"countdown", "3+4", "7", "", NONE},
        {"countdown", "3+4", "", "{\"numbers\":[3,4]}", NONE},
        {"countdown", "3+4", "7", "{\"numbers\":\"3 4\"}", NONE},
        {"countdown", "3+4", "7", "{\"numbers\":[3,4", NONE},
        {"countdown", "3+4", "7", "[3,4]", NONE},
        {"countdown", "3+4", "7", "{\"numbers\":null,\"nums\":[3,4]}", 1},
        {"countdown", "3+4", "7", "{\"numbers\":[3.5,4,3]}", NONE},
        {"countdown", "0+4", "4", "{\"numbers\":[\"a\",4]}", NONE},
        /* lists */
        {"sort", "3 5 9", "3 5 9", "", 1},
        {"sort", "[3, 5, 9]", "3 5 9", "", 1},
        {"sort", "The sorted list is: 3,5,9.", "3 5 9", "", 1},
        {"sort", "5\n3 5\n3 5 9", "3 5 9", "", 1},
        {"sort", "03 5.0 9", "3 5 9", "", 1},
        {"sort", "-9 -5 3", "-9 -5 3", "", 1},
        {"sort", "3 9 5", "3 5 9", "", 0},
        {"sort", "3 5", "3 5 9", "", 0},
        {"sort", "3 5 9 9", "3 5 9", "", 0},
        {"sort", "3 3 5 9", "3 3 5 9", "", 1},
        {"sort", "3 5 9 9", "3 3 5 9", "", 0},
        {"sort", "3 5 9 and that is it", "3 5 9", "", 0},
        {"sort", "359", "3 5 9", "", 0},
        {"sort", "3-5-9", "3 5 9", "", 0},
        {"sort", "3 5 9$", "3 5 9", "", 0},
        {"sort", "1,234", "1 234", "", 1},
        {"sort", "", "3 5 9", "", 0},
        {"sort", "3", "", "", NONE},
        /* brackets */
        {"brackets", "])", "])", "", 1},
        {"brackets", "] )\n", "])", "", 1},
        {"brackets", ")]", "])", "", 0},
        {"brackets", "]", "])", "", 0},
        {"brackets", "])]", "])", "", 0},
        {"brackets", "()])", "])", "", 0},
        {"brackets", "", "])", "", 0},
        {"brackets", "])", "", "{\"open\":\"([{}\"}", 1},
        {"brackets", "])", "", "{\"open\":\"[()(\"}", 0},
        {"brackets", ")]", "wrong", "{\"open\":\"[()(\"}", 1},
        {"brackets", ")", "", "{\"open\":\"())\"}", NONE},
        {"brackets", ")", "", "{\"open\":\"(x\"}", NONE},
        {"brackets", ")", "", "", NONE},
        /* text */
        {"exact", " Paris\n", "Paris", "", 1},
        {"exact", "Paris", "Paris ", "", 1},
        {"exact", "paris", "Paris", "", 0},
        {"exact", "Paris!", "Paris", "", 0},
        {"exact", "<think>Rome?</think>Paris", "Paris", "", 1},
        {"exact", "\\boxed{Paris}", "Paris", "", 1},
        {"exact", "a #### b", "a #### b", "", 1},
        {"exact", "", "", "", NONE},
        {"regex", "abc123", "^[a-z]+\\d+$", "", 1},
        {"regex", "abc", "^[a-z]+\\d+$", "", 0},
        {"regex", "abc", "unused", "{\"pattern\":\"^a\"}", 1},
        {"regex", "caf\u00e9", "^caf.$", "", 1},
        {"regex", "x\xff", "^x", "", 1},
        {"regex", "x", "(", "", NONE},
        {"regex", "x", "", "", NONE},
        {"regex", "x", "\\C", "", NONE},
        {"regex", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "^(a+)+$", "", NONE},
        /* without a task: the kind of the answer decides */
        {"", "it is 42.0", "42", "", 1},
        {NULL, "it is 42", "42", "", 1},
        {"", "3 Musketeers", "The 3 Musketeers", "", 0},
        {"", "The 3 Musketeers", "The 3 Musketeers", "", 1},
        {"", "I say\n#### 5", "2+3=5\n#### 5", "", 1},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const float score = verify(cases[i].task, cases[i].completion, cases[i].answer, cases[i].fields);
        if (isnan(score) != (cases[i].score == NONE) || (!isnan(score) && score != (float)cases[i].score))
            fail_msg("%s: '%s' for '%s' (%s): %g, expected %d", cases[i].task, cases[i].completion, cases[i].answer,
                     cases[i].fields ? cases[i].fields : "", (double)score, cases[i].score);
    }
    float score;
    assert_false(rewards_verify(&(RewardInput){.task = "chess"}, &score));
    const RewardInput empty = {0};
    assert_true(rewards_verify(&empty, &score));
    assert_true(isnan(score));
}

/* Numbers in every form that is written: the value that counts, never another number of the same text. */
static void test_numbers(void **state) {
    (void)state;
    static const struct {
        const char *task, *answer, *completion;
        int score;
    } cases[] = {
        {"numeric", "-3/4", "\\boxed{\\frac{-3}{4}}", 1},
        {"numeric", "4", "\\boxed{\\frac{-3}{4}}", 0},
        {"numeric", "4", "it is \\frac{-3}{4}", 0},
        {"numeric", "12", "\\boxed{\\frac12}", 0},
        {"numeric", "1/2", "\\boxed{\\frac12}", 1},
        {"numeric", "1/72", "\\boxed{\\frac1{72}}", 1},
        {"numeric", "1/2", "$\\dfrac{1}{2}$.", 1},
        {"numeric", "7/2", "3\\frac{1}{2}", 1},
        {"numeric", "0.5", "3\\frac{1}{2}", 0},
        {"numeric", "3.5", "3 1/2", 1},
        {"numeric", "0.5", "3 1/2", 0},
        {"numeric", "-3.5", "-3 1/2", 1},
        {"numeric", "3.5", "3\u00bd", 1},
        {"numeric", "0.5", "\u00bd", 1},
        {"numeric", "2.5", "the answer is 2\u00bd cups.", 1},
        {"numeric", "10000", "10,\\!000", 1},
        {"numeric", "10000", "10\\,000", 1},
        {"numeric", "0", "10\\,000", 0},
        {"numeric", "1234567", "1 234 567", 1},
        {"numeric", "567", "1 234 567", 0},
        {"numeric", "1234567", "1\u202f234\u202f567", 1},
        {"numeric", "5", "5 m^2", 1},
        {"numeric", "2", "5 m^2", 0},
        {"numeric", "5", "5\\text{ m}^2", 1},
        {"numeric", "5", "\\boxed{5\\text{ m}^2}", 1},
        {"numeric", "2", "\\boxed{5\\text{ m}^2}", 0},
        {"numeric", "8", "2^3", 1},
        {"numeric", "3", "2^3", 0},
        {"numeric", "1500", "1.5 \\times 10^3", 1},
        {"numeric", "3", "1.5 \\times 10^3", 0},
        {"numeric", "1000000", "10^6", 1},
        {"numeric", "1000000", "10\u2076", 1},
        {"numeric", "1000000", "10**6", 1},
        {"numeric", "0.001", "10^{-3}", 1},
        {"numeric", "-5", "\u20135", 1},
        {"numeric", "5", "\u20135", 0},
        {"numeric", "-5", "\u2212 5", 1},
        {"numeric", "-72", "#### - 72", 1},
        {"numeric", "72", "#### - 72", 0},
        {"numeric", "72", "...72", 1},
        {"numeric", "72", "so ... 72", 1},
        {"numeric", "72", "\u202672", 1},
        {"numeric", "2", "\\sqrt{2}", 0},
        {"numeric", "2", "the answer is $\\sqrt{2}$", 0},
        {"numeric", "2", "$\\sqrt 2$", 0},
        {"numeric", "2", "\u221a2", 0},
        {"numeric", "4", "\\boxed{4\\sqrt{2}}", 0},
        {"numeric", "28", "28%", 1},
        {"numeric", "72", "#### Step 1\nfoo\n\\boxed{72}", 1},
        {"numeric", "1", "#### Step 1\nfoo\n\\boxed{72}", 0},
        {"numeric", "72", "#### Step 1: compute\nThe answer is 72.", 1},
        {"numeric", "1", "#### Step 1: compute\nThe answer is 72.", 0},
        {"numeric", "72", "#### 1. First\n so \\boxed{72}", 1},
        {"numeric", "72", "#### 1. First\n so 72", 1},
        {"numeric", "72", "#### 72.", 1},
        {"numeric", "72", "**72**", 1},
        {"numeric", "72", "The answer is **72**.", 1},
        {"numeric", "72", "*72*", 1},
        {"numeric", "72", "#### **72**", 1},
        {"numeric", "72", "Answer: $72$", 1},
        {"numeric", "72", "\\(72\\)", 1},
        {"numeric", "72", "\\[72\\]", 1},
        {"numeric", "9", "2*9", 0},
        {"numeric", "18", "2*9 = 18", 1},
        {"numeric", "3", "3x", 0},
        {"numeric", "2", "2\\pi", 0},
        {"numeric", "3", "(2,3)", 0},
        {"numeric", "3", "(2, 3)", 0},
        {"numeric", "4", "3:4", 0},
        {"numeric", "3", "3:4", 0},
        {"numeric", "2023", "1/2/2023", 0},
        {"numeric", "5", "101_2", 0},
        {"numeric", "101", "101_2", 0},
        {"numeric", "101", "\\boxed{101_{2}}", 0},
        {"numeric", "1200", "$1,200", 1},
        {"numeric", "1200", "\u20ac1,200", 1},
        {"numeric", "1200", "1.200.000", 0},
        {"numeric", "1200000", "1.200.000", 1},
        {"numeric", "1234.5", "1.234,5", 0},
        {"numeric", "1200", "1'200", 1},
        {"numeric", "1200", "1_200", 1},
        {"numeric", "1234567", "12,34,567", 1},
        {"numeric", "567", "12,34,567", 0},
        {"numeric", "1500000", "1.5 million", 1},
        {"numeric", "1.5", "1.5 million", 0},
        {"numeric", "90", "90^\\circ", 1},
        {"numeric", "90", "90\u00b0", 1},
        {"numeric", "90", "\\boxed{90^{\\circ}}", 1},
        {"numeric", "5", "\\boxed{x = 5}", 1},
        {"numeric", "5", "x = 5", 1},
        {"numeric", "5", "\\boxed{x=5}", 1},
        {"numeric", "5", "\\boxed{2x=5}", 0},
        {"numeric", "5", "\\boxed{-x=5}", 0},
        {"numeric", "-5", "-(5)", 1},
        {"numeric", "5", "-(-5)", 1},
        {"numeric", "-5", "(-5)", 1},
        {"numeric", "5", "(5)", 1},
        {"numeric", "5", "\uff15", 1},
        {"numeric", "55", "\uff15\uff15", 1},
        {"numeric", "-5", "\uff0d\uff15", 1},
        {"numeric", "5", "\\boxed{{5}}", 1},
        {"numeric", "5", "\\boxed{\\text{5}}", 1},
        {"numeric", "5", "\\boxed{\\mathrm{5}}", 1},
        {"numeric", "5", "\\boxed{5\\,\\text{cm}}", 1},
        {"numeric", "5", "\\boxed{5 \\text{ or } 6}", 0},
        {"numeric", "6", "\\boxed{5 \\text{ or } 6}", 0},
        {"numeric", "5", "\\boxed5", 1},
        {"numeric", "5", "\\boxed 5", 1},
        {"numeric", "1/3", "0.\\overline{3}", 1},
        {"numeric", "5", "5!", 1},
        {"numeric", "5", "\\boxed{5!}", 0},
        {"numeric", "5", "\\boxed{[2,5]}", 0},
        {"numeric", "5", "\\boxed{2 \\pm 5}", 0},
        {"numeric", "5", "\\boxed{-\\infty, 5}", 0},
        {"numeric", "1000", "1e3", 1},
        {"numeric", "1000", "1E+3", 1},
        {"numeric", "1500", "1.5\u00b710\u00b3", 1},
        {"numeric", "1500", "1.5 x 10^3", 1},
        {"numeric", "3", "two thirds 2/3", 0},
        {"numeric", "16", "2 2/3", 0},
        {"numeric", "x^2+1", "1", NONE},
        {"numeric", "(2,3)", "3", NONE},
        {"numeric", "2\\sqrt{3}", "3", NONE},
        {"numeric", "p - q", "3", NONE},
        {"numeric", "\\pi", "3", NONE},
        {"numeric", "five", "5", NONE},
        {"numeric", "5 apples", "5", 1},
        {"numeric", "x \\in [2,5]", "5", NONE},
        {"numeric", "3:4", "4", NONE},
        {"numeric", "101_2", "101", NONE},
        {"numeric", "60", "60 km/h", 1},
        {"numeric", "60", "60 miles per hour", 1},
        {"numeric", "60", "\\boxed{60\\text{ km/h}}", 1},
        {"numeric", "60", "\\boxed{60\\ \\mathrm{km/h}}", 1},
        {"numeric", "5", "the ratio is 3-5", 0},
        {"numeric", "3", "3-5", 0},
        {"numeric", "72", "It took 5-day week, total 72", 1},
        {"numeric", "72", "#### 72 (8*9)", 1},
        {"numeric", "72", "#### 8*9=72", 1},
        {"numeric", "9", "#### 8*9", 0},
        {"numeric", "72", "Total = $72.00", 1},
        {"numeric", "72", "72.0", 1},
        {"numeric", "72", "072", 1},
        {"numeric", "72", ".72", 0},
        {"numeric", "0.72", ".72", 1},
        {"numeric", "72", "72 .", 1},
        {"numeric", "-72", "-$72", 1},
        {"numeric", "-72", "$-72", 1},
        {"numeric", "-72", "-\\$72", 1},
        {"numeric", "-72", "($72)", 0},
        {"", "28", "28%", 1},
        {"", "0.28", "28%", 1},
        {"", "28%", "0.28", 1},
        {"", "28%", "28 percent", 1},
        {"numeric", "28", "\\boxed{28}\\%", 1},
        {"numeric", "25", "\\boxed{5^2}", 1},
        {"numeric", "1/4", "\\boxed{(1/2)^2}", 1},
        {"numeric", "1/4", "\\boxed{\\left(\\frac12\\right)^2}", 1},
        {"numeric", "5", "\\boxed{\\left(5\\right)}", 1},
        {"numeric", "5", "The answer is 5\\text{ cm}.", 1},
        {"numeric", "5", "5 \\text{ cm}^2", 1},
        {"numeric", "5 cm^2", "5", 1},
        {"numeric", "5 cm^2", "\\boxed{5 \\text{ cm}^{2}}", 1},
        {"numeric", "5 cm^2", "\\boxed{5 \\text{ cm}^{20}}", 0},
        {"numeric", "5 cm^2", "It has 5 cm^3.", 0},
        {"numeric", "5 cm\u00b2", "5\\,\\mathrm{cm^2}", 1},
        {"math", "5 \\text{ cm}^2", "\\boxed{5 \\text{ cm}^20}", 0},
        {"math", "5 \\text{ cm}^2", "\\boxed{5 \\text{ cm}^2}", 1},
        {"", "5\\text{rods}^2", "\\boxed{5 \\text{rods}^3}", 0},
        {"math", "9.8 m/s^2", "\\boxed{9.8 \\text{ m s}^{-2}}", 1},
        {"math", "9.8 m/s^2", "\\boxed{9.8 \\text{ m/s}^3}", 0},
        {"numeric", "5 cm^2", "5 in all, and x^3 is the volume", 1},
        {"numeric", "5", "\\frac{5}", 0},
        {"numeric", "5", "\\frac{x}{5}", 0},
        {"numeric", "5", "\\boxed{\\frac{x}{5}}", 0},
        {"numeric", "5", "\\boxed{\\frac{\\sqrt{3}}{5}}", 0},
        {"numeric", "5", "\\sqrt[3]{5}", 0},
        {"numeric", "5", "\\log_2 5", 0},
        {"numeric", "5", "\\sin 5", 0},
        {"numeric", "30", "\\sin 30", 0},
        {"numeric", "5", "x^5", 0},
        {"numeric", "5", "x_5", 0},
        {"numeric", "5", "a5", 0},
        {"numeric", "5", "x < 5", 1},
        {"numeric", "7", "5 + 7", 0},
        {"numeric", "7", "5+7", 0},
        {"numeric", "7", "5 \u2212 7", 0},
        {"numeric", "7", "x+7", 0},
        {"numeric", "5", "3 \u00f7 5", 0},
        {"numeric", "0.6", "3/5", 1},
        {"numeric", "5", "\\boxed{5,6}", 0},
        {"numeric", "6", "\\boxed{5,6}", 0},
        {"numeric", "5", "{5,6}", 0},
        {"numeric", "6", "\\{5,6\\}", 0},
        {"numeric", "6", "[5, 6]", 0},
        {"numeric", "6", "x=5, y=6", 1},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const float score = verify(cases[i].task, cases[i].completion, cases[i].answer, "");
        if (isnan(score) != (cases[i].score == NONE) || (!isnan(score) && score != (float)cases[i].score))
            fail_msg("%s: '%s' for '%s': %g, expected %d", cases[i].task, cases[i].completion, cases[i].answer,
                     (double)score, cases[i].score);
    }
    /* exact, unless the record gives a tolerance */
    assert_true(verify("numeric", "0.333", "1/3", "") == 0);
    assert_true(verify("numeric", "0.333", "1/3", "{\"tolerance\":0.001}") == 1);
    assert_true(verify("numeric", "0.3", "0.2", "{\"tolerance\":0.1}") == 1);
    assert_true(verify("numeric", "0.31", "0.2", "{\"tolerance\":0.1}") == 0);
}

/* Rewritten MATH-style answers: each that a peer accepts is right, and a near miss only where a peer accepts it too. */
static void test_math(void **state) {
    (void)state;
    FILE *f = fopen("tests/golden/math.jsonl", "r");
    assert_non_null(f);
    int rewritten = 0, wrong = 0;
    for (json_t *row; (row = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL)); json_decref(row)) {
        const char *kind = json_string_value(json_object_get(row, "kind")),
                   *answer = json_string_value(json_object_get(row, "answer")),
                   *completion = json_string_value(json_object_get(row, "completion"));
        static const char *const peers[] = {"math_verify", "math_reward", "math_dapo"};
        bool peer = false;
        for (size_t k = 0; k < COUNT(peers); k++) peer |= json_integer_value(json_object_get(row, peers[k])) == 1;
        for (int k = 0; k < 2; k++) {
            const float score = verify(k ? "math" : "", completion, answer, "");
            const bool miss = !strcmp(kind, "wrong");
            if (miss ? score == 1 && !peer : score != 1)
                fail_msg("%s: '%s' for '%s': %g", kind, completion, answer, (double)score);
        }
        *(!strcmp(kind, "wrong") ? &wrong : &rewritten) += 1;
    }
    assert_true(rewritten > 200 && wrong > 300);
    fclose(f);
}

/* SQuAD's measures: the values of dev/golden/golden_squad.py, rounded to float32 (2^-25 below 1). */
static void test_squad(void **state) {
    (void)state;
    FILE *f = fopen("tests/golden/squad.jsonl", "r");
    assert_non_null(f);
    int rows = 0, partial = 0;
    for (json_t *row; (row = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL)); json_decref(row), rows++) {
        static const char *const tasks[] = {"em", "f1"};
        const char *answer = json_string_value(json_array_get(json_object_get(row, "answers"), 0)),
                   *completion = json_string_value(json_object_get(row, "completion"));
        char *fields = json_dumps(row, 0); /* among them `answers` */
        for (size_t k = 0; k < COUNT(tasks); k++) {
            const double expected = json_number_value(json_object_get(row, tasks[k]));
            const float score = verify(tasks[k], completion, answer, fields);
            if (!(fabs(score - expected) <= 0x1p-25))
                fail_msg("%s: %s: %g, expected %g", tasks[k], fields, (double)score, expected);
            partial += expected > 0 && expected < 1;
        }
        free(fields);
    }
    assert_true(rows == 300 && partial > 80);
    fclose(f);
}

/* The part of a completion that is compared in words, records with several answers or none, letters, and votes. */
static void test_text(void **state) {
    (void)state;
    static const struct {
        const char *task, *answer, *completion, *fields;
        double score;
    } cases[] = {{"em", "Denver Broncos", "the Denver broncos!", "", 1},
                 {"em", "Denver Broncos", "Broncos", "", 0},
                 {"em", "x", "<answer>An apple.</answer>", "{\"answers\":[\"pear\",\"apple\"]}", 1},
                 {"em", "theory", "a theory", "", 1},
                 {"em", "", "x", "", NONE},
                 {"f1", "Denver Broncos", "the Broncos", "", 2.0 / 3},
                 {"f1", "a b c d", "b b d x", "", 4.0 / 7},
                 {"f1", "x", "y", "{\"answers\":[\"y z\"]}", 2.0 / 3},
                 {"f1", "x", "y", "", 0},
                 {"choice", "B", "(B)", "", 1},
                 {"choice", "(B)", "The answer is B.", "", 1},
                 {"choice", "B", "Answer: **B**", "", 1},
                 {"choice", "B", "\\boxed{\\text{(B)}}", "", 1},
                 {"choice", "B", "B) Paris", "", 1},
                 {"choice", "B", "It is not B. The answer is C.", "", 0},
                 {"choice", "B", "Which answer is right? Answer: B", "", 1},
                 {"choice", "B", "The answer is B.\nAnswer: C", "", 0},
                 {"choice", "B", "Answer: C\nThe answer is B.", "", 1},
                 {"choice", "B", "ANSWER: B", "", 1},
                 {"math", "x+1", "This answer is easy.\nAnswer: $1+x$", "", 1},
                 {"choice", "A", "A cat", "", 0},
                 {"choice", "B", "Both", "", 0},
                 {"choice", "maybe", "B", "", NONE}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        const float score = verify(cases[i].task, cases[i].completion, cases[i].answer, cases[i].fields);
        if (isnan(score) != (cases[i].score == NONE) || (!isnan(score) && fabs(score - cases[i].score) > 1e-6))
            fail_msg("%s: '%s' for '%s': %g", cases[i].task, cases[i].completion, cases[i].answer, (double)score);
    }
    char red[64], blue[64];
    const RewardInput in[] = {{.answer = "red 2", .completion = "red 2"}, {.answer = "red 2", .completion = "blue 2"}};
    assert_true(rewards_answer(&in[0], red, sizeof red) && rewards_answer(&in[1], blue, sizeof blue));
    assert_string_not_equal(red, blue);
}

/* What follows a NUL is part of a completion. */
static void test_bytes(void **state) {
    (void)state;
    static const struct {
        const char *task, *answer, *completion;
        size_t length;
        float score;
    } cases[] = {{"exact", "a", "a\0zzzz", 6, 0},   {"exact", "a", "a\0zzzz", 0, 1}, {"exact", "a", "a", 1, 1},
                 {"add", "5", "5\0 6", 4, 0},       {"numeric", "6", "5\0 6", 4, 1}, {"sort", "1 2", "1 2\0", 4, 0},
                 {"brackets", ")", ")\0", 2, 0},    {"regex", "^a$", "a\0b", 3, 0},  {"numeric", "5", "5\0", 2, 0},
                 {"countdown", "3", "1+2\0", 4, 0}, {"em", "x", "x a\0", 4, 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        const RewardInput in = {.task = cases[i].task,
                                .answer = cases[i].answer,
                                .completion = cases[i].completion,
                                .completion_length = cases[i].length,
                                .fields = "{\"numbers\":[1,2]}"};
        float score = -1;
        assert_true(rewards_verify(&in, &score));
        if (score != cases[i].score) fail_msg("case %zu: %g", i, (double)score);
    }
    /* one in a field does not remove the others */
    const char *const fields = "{\"note\":\"a\\u0000b\",\"numbers\":[1,2],\"answers\":[\"x\\u0000y\"],\"style\":"
                               "\"reversed\\u0000\",\"open\":\"(\\u0000\",\"pattern\":\"a\\u0000b\"}";
    assert_true(verify("countdown", "1+2", "3", fields) == 1);
    assert_true(verify("em", "x", "z", fields) == 0);
    assert_true(verify("numeric", "12", "12", fields) == 1);
    assert_true(isnan(verify("brackets", ")", ")", fields)));
    assert_true(isnan(verify("regex", "a", "a", fields)));
    const RewardInput in = {.completion = "a\0b", .completion_length = 3, .fields = fields};
    size_t length;
    char *line = reward_command_line(&in, &length);
    assert_non_null(strstr(line, "\"completion\":\"a\\u0000b\""));
    assert_non_null(strstr(line, "\"note\":\"a\\u0000b\""));
    free(line);
    float value;
    assert_false(reward_parse("1\0junk", 6, &value));
    assert_false(reward_parse("0x10", 4, &value));
    assert_true(reward_parse(" -1.5e1 ", 8, &value));
    assert_float_equal(value, -15, 0);
}

/* Writes n with a separator between groups of three digits. */
static void grouped(int64_t n, const char *separator, char out[64]) {
    char digits[32];
    snprintf(digits, sizeof digits, "%lld", (long long)(n < 0 ? -n : n));
    const size_t count = strlen(digits);
    out[0] = 0;
    if (n < 0) strcat(out, "-");
    for (size_t i = 0; i < count; i++) {
        if (i && (count - i) % 3 == 0) strcat(out, separator);
        strncat(out, &digits[i], 1);
    }
}

/* Answers of GSM8K's form, made of integers and written in other ways: every way to write a number is right for it, whether
 * the model's answer or the record's is rewritten, and no way to write another number is. */
static void test_gsm8k_rewritten(void **state) {
    (void)state;
    /* @: the number, #: the number with commas */
    static const char *const ways[] = {"@",
                                       "#",
                                       "$@",
                                       "$#",
                                       "\\$#",
                                       "@.",
                                       "#.",
                                       "@.0",
                                       "#.00",
                                       "$#.00",
                                       "@ dollars",
                                       "# dollars",
                                       "@%",
                                       "@ apples",
                                       "# km",
                                       "@ km/h",
                                       " @ ",
                                       "  #",
                                       "@\t",
                                       "@\n",
                                       "**@**",
                                       "**#**",
                                       "$@$",
                                       "\\boxed{@}",
                                       "@ cm^2",
                                       "@ (apples)",
                                       "@, since",
                                       "USD @",
                                       "\xe2\x82\xac@",
                                       "\xc2\xa3#",
                                       "@\xc2\xb0",
                                       "@ \\text{ m}",
                                       "@.000",
                                       "=@",
                                       "= #",
                                       "@ per week"};
    char number[64], commas[64], answer[160], completion[256], other[64];
    Random r = random_start(20, 0);
    for (int i = 0; i < 120; i++) {
        const int64_t most = i % 4 == 0 ? 100 : i % 4 == 1 ? 10000 : i % 4 == 2 ? 1000000 : 100000000;
        const int64_t n = random_between(&r, 0, most) * (i % 5 == 4 ? -1 : 1);
        snprintf(number, sizeof number, "%lld", (long long)n);
        grouped(n, ",", commas);
        /* near misses: neighbours, the other sign, a digit more or less, digits exchanged, a half */
        const int64_t wrong[] = {n + 1, n - 1, -n, 10 * n, n / 10, n + 1000, 100 * n + 5, n % 1000};
        for (size_t w = 0; w < COUNT(ways); w++) {
            char text[160];
            size_t length = 0;
            for (const char *s = ways[w]; *s; s++) {
                const char *piece = *s == '@' ? number : *s == '#' ? commas : NULL;
                if (piece) length += (size_t)snprintf(text + length, sizeof text - length, "%s", piece);
                else text[length++] = *s;
            }
            text[length] = 0;
            snprintf(completion, sizeof completion, "He has 3*4=12 of them, and 7 more.\n#### %s", text);
            snprintf(answer, sizeof answer, "3*4=<<3*4=12>>12\n#### %s", i % 2 ? number : commas);
            if (verify("gsm8k", completion, answer, "") != 1) fail_msg("'%s' is wrong for '%s'", completion, answer);
            if (verify("numeric", completion, number, "") != 1) fail_msg("'%s' is wrong for %s", completion, number);
            for (size_t k = 0; k < COUNT(wrong); k++) {
                if (wrong[k] == n || (strchr(text, '%') && 100 * wrong[k] == n)) continue;
                snprintf(other, sizeof other, "#### %lld", (long long)wrong[k]);
                if (verify("gsm8k", completion, other, "") != 0) fail_msg("'%s' is right for %s", completion, other);
                if (verify("numeric", completion, other + 5, "") != 0)
                    fail_msg("'%s' is right for%s", completion, other + 4);
            }
        }
    }
}

/* Records that their own task cannot check are found without a completion. */
static void test_check_answer(void **state) {
    (void)state;
    static const struct {
        const char *task, *answer, *fields, *message;
    } cases[] = {
        {"numeric", "5", "", NULL},
        {"numeric", "five", "", "task 'numeric' cannot check the answer 'five'"},
        {"numeric", "2\\sqrt{3}", "", "cannot check the answer"},
        {"sort", "", "", "task 'sort' cannot check the answer ''"},
        {"sort", "1 2", "", NULL},
        {"countdown", "5", "", "cannot check"},
        {"countdown", "5", "{\"numbers\":[2,3]}", NULL},
        {"regex", "(", "", "cannot check"},
        {"", "text", "", NULL},
        {"", "", "", "task '' cannot check the answer ''"},
        {"some/gsm8k", "5", "", "task 'some/gsm8k' has no verifier, must be add, "},
        {"numeric", "5", "{\"tolerance\":\"0.1\"}", "field 'tolerance' is \"0.1\", must be a number >= 0"},
        {"numeric", "5", "{\"tolerance\":-0.5}", "field 'tolerance' is -0.5, must be"},
        {"numeric", "5", "{\"tolerance\":true}", "field 'tolerance' is true, must be"},
        {"numeric", "5", "{\"tolerance\":[0.1]}", "field 'tolerance' is [0.1], must be"},
        {"gsm8k", "5", "{\"tolerance\":-1}", "field 'tolerance' is -1, must be"},
        {"math", "5", "{\"tolerance\":-1}", "field 'tolerance' is -1, must be"},
        {"", "5", "{\"tolerance\":-1}", "field 'tolerance' is -1, must be"},
        {"numeric", "5", "{\"tolerance\":0,\"style\":null}", NULL},
        {"math", "\\pi", "{\"tolerance\":-1}", NULL}, /* no number, so it is not read */
        {"add", "5", "{\"style\":\"Reversed\"}", "is \"Reversed\", must be direct, reversed or scratchpad"},
        {"add", "5", "{\"style\":1}", "field 'style' is 1, must be"},
        {"add", "5", "{\"style\":\"direct\"}", NULL},
        {"exact", "5", "{\"style\":\"formal\"}", NULL},
        {"countdown", "5", "{\"numbers\":[2,\"3\"]}", "field 'numbers' is [2,\"3\"], must be a list of 1 to 64"},
        {"countdown", "5", "{\"nums\":[2,3.5]}", "field 'nums' is [2,3.5], must be"},
        {"countdown", "5", "{\"nums\":\"2 3\"}", "field 'nums' is \"2 3\", must be"},
        {"countdown", "5", "{\"nums\":[2,3],\"numbers\":[2,3]}",
         "field 'numbers' is given together with the field 'nums'"},
        {"countdown", "5", "{\"nums\":[2,3],\"target\":\"5\"}", "field 'target' is \"5\", must be an integer"},
        {"countdown", "5", "{\"nums\":[2,3],\"use_all\":\"true\"}", "field 'use_all' is \"true\", must be true"},
        {"countdown", "5", "{\"nums\":[2,3],\"use_all\":1}", "field 'use_all' is 1, must be true"},
        {"brackets", ")", "{\"open\":[\"(\"]}", "field 'open' is [\"(\"], must be brackets"},
        {"brackets", ")", "{\"open\":\"())\"}", "field 'open' is \"())\", must be brackets"},
        {"regex", "a", "{\"pattern\":5}", "field 'pattern' is 5, must be a text"},
        {"em", "1912", "{\"answers\":[\"1912\",1912]}", "field 'answers' is [\"1912\",1912], must be a list of texts"},
        {"f1", "a", "{\"answers\":{\"text\":[\"a\"]}}", "field 'answers' is {\"text\":[\"a\"]}, must be a list"},
        {"f1", "a", "{\"answers\":[\"b\"]}", NULL}};
    Error e;
    for (size_t i = 0; i < COUNT(cases); i++) {
        const RewardInput in = {.task = cases[i].task, .answer = cases[i].answer, .fields = cases[i].fields};
        float score;
        assert_int_equal(rewards_check_answer(&in, &e), !cases[i].message);
        if (cases[i].message) assert_message(&e, cases[i].message);
        if (rewards_verify(&in, &score)) assert_int_equal(isnan(score), cases[i].message != NULL);
    }
}

static char *repeated(const char *piece, size_t times) {
    const size_t n = strlen(piece);
    char *text = xmalloc(n * times + 1);
    for (size_t i = 0; i < times; i++) memcpy(text + n * i, piece, n);
    text[n * times] = 0;
    return text;
}

/* Long inputs that might cause recursion, overflow or quadratic time, for every verifier: it must not crash and must
 * return at once. */
static void test_nasty(void **state) {
    (void)state;
    static const char *const pieces[] = {"(",        ")",      "-",      "1",        "1,111",    "((1)",    "1+",
                                         "9*",       "####",   "####\n", "\\boxed{", "{}",       "\\frac{", "$-",
                                         "<answer>", "1e9",    "\n",     ":",        "</think>", "[1 2 ",   ".1",
                                         "1/",       "\u2212", "\xff",   "0",        " 1 ",      "a"};
    static const char *const tasks[] = {"add", "word", "countdown", "sort", "brackets", "exact", "regex", ""};
    static const char *const fields[] = {"{\"numbers\":[1,2],\"target\":3,\"open\":\"((\",\"pattern\":\"(a|1)*Z\"}",
                                         "{\"style\":\"reversed\"}"};
    char *answer = xmalloc(1 << 20);
    const double start = clock_seconds();
    for (size_t i = 0; i < COUNT(pieces); i++) {
        char *text = repeated(pieces[i], 20000);
        for (size_t k = 0; k < COUNT(tasks); k++)
            for (size_t f = 0; f < COUNT(fields); f++) {
                const float score = verify(tasks[k], text, k == 6 ? "(1+)+Z" : "3", fields[f]);
                if (!(isnan(score) || score == 0)) fail_msg("%s: right, for many times '%s'", tasks[k], pieces[i]);
                reward_final_answer(text, tasks[k], answer, 1 << 20);
                reward_final_answer(text, tasks[k], answer, 5);
            }
        verify("sort", "1", text, "");
        verify("countdown", "1", text, fields[0]);
        verify("add", "1", text, text);
        free(text);
    }
    free(answer);
    assert_true(clock_seconds() - start < 30); /* far more than it needs, far less than a quadratic pass would */
    char *open = repeated("(", 1000000), *shut = repeated(")", 1000000), *nest = xmalloc(2000002);
    sprintf(nest, "%s1%s", open, shut);
    assert_true(verify("countdown", nest, "1", "{\"numbers\":[1]}") == 0);
    char *minus = repeated("-", 1000000);
    sprintf(nest, "%s1", minus);
    assert_true(verify("countdown", nest, "1", "{\"numbers\":[1]}") == 1);
    char *deep = xmalloc(3000000);
    sprintf(deep, "{\"numbers\":%s", open);
    memset(deep + 11, '[', 1000000);
    assert_true(isnan(verify("countdown", "1", "1", deep)));
    free(open), free(shut), free(nest), free(minus), free(deep);
    assert_true(verify("countdown", "((((((((((1))))))))))", "1", "{\"numbers\":[1]}") == 1);
    char digits[1100];
    memset(digits, '7', sizeof digits);
    digits[1000] = 0;
    assert_true(verify("add", digits, digits, "") == 1);
    digits[1000] = '7';
    digits[1001] = 0;
    assert_true(isnan(verify("add", digits, digits, "")));
    assert_true(verify("add", digits, "7", "") == 0);
}

static void test_final_answer(void **state) {
    (void)state;
    static const struct {
        const char *completion, *task, *answer;
    } cases[] = {{"12+34=046", "add", "46"},
                 {"so 1,000.50", "numeric", "1000.5"},
                 {"3/6", "numeric", "0.5"},
                 {"2/6", "numeric", "1/3"},
                 {"-2/6", "numeric", "-1/3"},
                 {"-0.0", "numeric", "0"},
                 {"25e-3", "numeric", "0.025"},
                 {"#### 7 of 9", "word", "7"},
                 {"7", "word", NULL},
                 {"(3+4)*5", "countdown", "35"},
                 {"1/3+1/3", "countdown", "2/3"},
                 {"1-3/2", "countdown", "-0.5"},
                 {"1/0", "countdown", NULL},
                 {"[3, 05,9]", "sort", "3 5 9"},
                 {"none", "sort", NULL},
                 {"] )", "brackets", "])"},
                 {" a b ", "exact", "a b"},
                 {"", "exact", NULL},
                 {"I think 5", "", "Ithink5"},
                 {"I think not", "", "Ithinknot"},
                 {"\\boxed{x}", "chess", "x"}};
    char answer[64];
    for (size_t i = 0; i < COUNT(cases); i++) {
        const bool found = reward_final_answer(cases[i].completion, cases[i].task, answer, sizeof answer);
        assert_int_equal(found, cases[i].answer != NULL);
        if (found) assert_string_equal(answer, cases[i].answer);
    }
    const RewardInput in = {.completion = "064", .task = "add", .fields = "{\"style\":\"reversed\"}"};
    assert_true(rewards_answer(&in, answer, sizeof answer));
    assert_string_equal(answer, "460");
    assert_false(reward_final_answer("12345", "add", answer, 5));
    assert_true(reward_final_answer("1234", "add", answer, 5));
}

/* ---- shapers --------------------------------------------------------------------------------------------------- */

static float score_one(const char *spec, const RewardInput *in) {
    Rewards r;
    Error e;
    float part[REWARDS_MAX], total = -1000;
    if (!rewards_open(&r, spec, NULL, 1, 1, 100, &e)) fail_msg("%s: %s", spec, e.text);
    assert_true(rewards_score(&r, in, 1, part, &total, &e));
    rewards_close(&r);
    return total;
}

static void test_golden(void **state) {
    (void)state;
    FILE *f = golden_open("rewards.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g), cases++) {
        const double *a = golden(&g, "argument"), *value = golden(&g, "value"), *tokens = golden(&g, "tokens");
        char spec[200];
        RewardInput in = {.task = "add", .answer = "1"};
        if (!strcmp(g.family, "overlong") || !strcmp(g.family, "cosine")) {
            if (a[golden_count(&g, "argument") - 1] < 0) fail();
            if (g.family[0] == 'o') snprintf(spec, sizeof spec, "overlong=%.17g/%.17g", a[0], a[1]);
            else {
                snprintf(spec, sizeof spec, "cosine=%.17g/%.17g/%.17g/%.17g/%.17g", a[0], a[1], a[2], a[3], a[4]);
                in.completion = golden(&g, "right")[0] > 0 ? "1" : "2";
            }
            for (int i = 0; i < golden_count(&g, "tokens"); i++) {
                in.tokens = (int32_t)tokens[i];
                assert_true(fabs(score_one(spec, &in) - value[i]) < 1e-6);
            }
        } else if (!strcmp(g.family, "repetition")) {
            const int n = golden_count(&g, "ids");
            int32_t *ids = xcalloc((size_t)n, sizeof *ids);
            for (int i = 0; i < n; i++) ids[i] = (int32_t)golden(&g, "ids")[i];
            in.tokens = n;
            in.ids = ids;
            snprintf(spec, sizeof spec, "repetition=%.17g/%.17g", a[0], a[1]);
            assert_true(fabs(score_one(spec, &in) - value[0]) < 1e-6);
            free(ids);
        } else {
            char text[200];
            const int n = golden_count(&g, "text");
            for (int i = 0; i < n; i++) text[i] = (char)(unsigned char)golden(&g, "text")[i];
            text[n] = 0;
            in.completion = text;
            if (score_one("format=think", &in) != (float)value[0]) fail_msg("think format: '%s'", text);
        }
    }
    assert_true(cases > 300);
    fclose(f);
}

static void test_other_parts(void **state) {
    (void)state;
    RewardInput in = {.completion = "<think>6*7</think>\n#### 42", .answer = "42", .task = "word", .tokens = 30};
    assert_float_equal(score_one("verify", &in), 1, 0);
    assert_float_equal(score_one(NULL, &in), 1, 0);
    assert_float_equal(score_one("", &in), 1, 0);
    assert_float_equal(score_one("verify:2,format:0.5", &in), 2.5, 0);
    assert_float_equal(score_one("verify:-1", &in), -1, 0);
    assert_float_equal(score_one("exact,numeric,hash", &in), 3, 0);
    assert_float_equal(score_one("format=hash", &in), 1, 0);
    assert_float_equal(score_one("format=boxed", &in), 0, 0);
    assert_float_equal(score_one("format=answer", &in), 0, 0);
    assert_float_equal(score_one("length=40/0.01", &in), -0.1f, 1e-7f);
    assert_float_equal(score_one("length=10", &in), -0.006f, 1e-7f);
    /* turns and calls; a completion without turns has one, and no call */
    assert_float_equal(score_one("turns=1/0.25", &in), 0, 0);
    assert_float_equal(score_one("tool-use", &in), 0, 0);
    assert_float_equal(score_one("tool-use=0/2", &in), 1, 0);
    in.turns = 4, in.calls = 3;
    assert_float_equal(score_one("turns=2/0.25", &in), -0.5f, 1e-7f);
    assert_float_equal(score_one("turns=2", &in), -0.2f, 1e-7f);
    assert_float_equal(score_one("tool-use", &in), 1, 0);
    assert_float_equal(score_one("tool-use=1/2", &in), 0, 0);
    assert_float_equal(score_one("tool-use=3/3", &in), 1, 0);
    assert_float_equal(score_one("cosine", &in), (float)(0.75 + 0.25 * cos(0.3 * M_PI)), 1e-6f);
    assert_float_equal(score_one("overlong", &in), 0, 0); /* cache 20 of 100 */
    in.tokens = 90;
    assert_float_equal(score_one("overlong", &in), -0.5, 1e-7f);
    in.completion = "#### 42 and more";
    assert_float_equal(score_one("format=hash", &in), 0, 0);
    in.completion = "#### 42.";
    assert_float_equal(score_one("format=hash", &in), 1, 0);
    in.completion = "\\boxed{\\frac{\\sqrt{3}}{2}}";
    assert_float_equal(score_one("format=boxed", &in), 1, 0);
    in.completion = "\\boxed{{{{{1}}}}}}";
    assert_float_equal(score_one("format=boxed", &in), 0, 0);
    in.completion = "a \\boxed{\\frac{1}{2}} b";
    assert_float_equal(score_one("format=boxed", &in), 1, 0);
    in.completion = "<think>a</think>\n<answer>b</answer>\n";
    assert_float_equal(score_one("format=answer", &in), 1, 0);
    in.completion = "abcabcabc"; /* bytes if no ids are given: abc bca cab abc bca cab abc */
    assert_float_equal(score_one("repetition", &in), (float)(-(1 - 3.0 / 7)), 1e-6f);

    in.completion = "a/b,c:d 12";
    in.task = "regex";
    in.fields = "{\"pattern\":\"C\"}";
    assert_float_equal(score_one("regex=/a\\/b,c:d/", &in), 1, 0);
    assert_float_equal(score_one("regex=/A\\/B/i:0.5,regex=/\\d+$/:0.25,regex=/^x/:8", &in), 0.75, 0);
    assert_float_equal(score_one("regex=/\\\\/", &in), 0, 0);
    assert_float_equal(score_one("regex", &in), 0, 0);
    in.fields = "{\"pattern\":\"c\"}";
    assert_float_equal(score_one("regex", &in), 1, 0);

    /* NaN parts are left out of the sum; if all parts are NaN the sum is NaN */
    in = (RewardInput){.completion = "5", .answer = "", .task = "add", .tokens = 3};
    assert_true(isnan(score_one("verify", &in)));
    assert_true(isnan(score_one("verify,cosine", &in)));
    assert_float_equal(score_one("verify,length=4/1:2", &in), -2, 0);

    /* the control: depends on seed and id alone, right on average */
    Rewards r;
    Error e;
    enum { N = 4000 };
    RewardInput *inputs = xcalloc(N, sizeof *inputs);
    float *part = xcalloc(N, sizeof *part), *total = xcalloc(N, sizeof *total), sum = 0;
    for (int i = 0; i < N; i++) inputs[i].id = (uint64_t)i;
    assert_true(rewards_open(&r, "random=0.3", NULL, 1, 7, 0, &e));
    assert_true(rewards_score(&r, inputs, N, part, total, &e));
    for (int i = 0; i < N; i++) sum += total[i];
    assert_true(fabsf(sum / N - 0.3f) < 0.03f);
    float again, backward = total[N - 1];
    assert_true(rewards_score(&r, &inputs[N - 1], 1, part, &again, &e));
    assert_float_equal(again, backward, 0);
    rewards_close(&r);
    free(inputs), free(part), free(total);
}

static void test_specification(void **state) {
    (void)state;
    static const struct {
        const char *spec, *message;
    } bad[] = {{"verfy", "'verfy': unknown, must be verify"},
               {"verify:", "weight '' is not a number"},
               {"verify:x", "weight 'x' is not a number"},
               {"verify:1x", "weight '1x' is not a number"},
               {"verify:nan", "not a number"},
               {"verify:inf", "not a number"},
               {"verify,", "nothing after the last comma"},
               {",verify", "'': unknown"},
               {"verify,,exact", "'': unknown"},
               {"verify=3", "verify=3: takes no argument"},
               {"random=2", "must be a probability"},
               {"random=x", "must be up to 1 number "},
               {"random=0.1/2", "must be up to 1 number "},
               {"overlong=5/", "must be up to 2 numbers"},
               {"overlong=101", "must have 0 <= cache <= maximum length"},
               {"overlong=", "nothing after"},
               {"cosine=0", "must be positive"},
               {"repetition=0", "integer n"},
               {"repetition=2.5", "integer n"},
               {"repetition=2/1", "penalty <= 0"},
               {"length", "needs a target"},
               {"length=x", "must be"},
               {"turns", "needs a target of at least 1"},
               {"turns=0", "needs a target of at least 1"},
               {"tool-use=3/2", "the minimum and the maximum number of calls"},
               {"tool-use=-1", "the minimum and the maximum number of calls"},
               {"format=xml", "must be one of think|hash|boxed|answer"},
               {"regex=abc", "must be /pattern/flags"},
               {"regex=/abc", "must be /pattern/flags"},
               {"regex=//", "must be /pattern/flags"},
               {"regex=", "must be /pattern/flags"},
               {"verify,regex=,exact", "must be /pattern/flags"},
               {"regex=/(/", "missing closing parenthesis"},
               {"regex=/a/q", "'q' is unexpected"},
               {"regex=/(/,verify", "missing closing parenthesis"},
               {"command", "no program is given"},
               {"verify,verify,verify,verify,verify,verify,verify,verify,verify,verify,verify,verify,verify,verify,"
                "verify,verify,verify",
                "more than 16 parts"}};
    Rewards r;
    Error e;
    for (size_t i = 0; i < COUNT(bad); i++) {
        if (rewards_open(&r, bad[i].spec, NULL, 1, 1, 100, &e)) fail_msg("%s was accepted", bad[i].spec);
        assert_message(&e, bad[i].message);
    }
    assert_false(rewards_open(&r, "overlong", NULL, 1, 1, 0, &e));
    assert_true(rewards_open(&r, "format=hash,verify:0,format=think:0.2", NULL, 1, 1, 0, &e));
    assert_int_equal(r.count, 3);
    assert_string_equal(r.name[0], "format");
    assert_string_equal(r.name[1], "verify");
    assert_string_equal(r.name[2], "format_2");
    assert_true(r.weight[0] == 1 && r.weight[1] == 0 && r.weight[2] == 0.2);
    const RewardInput in = {.task = "chess", .completion = "e4"};
    float part[3], total;
    assert_false(rewards_score(&r, &in, 1, part, &total, &e));
    assert_message(&e, "task 'chess' has no verifier");
    rewards_close(&r);
}

/* ---- the reward program ---------------------------------------------------------------------------------------- */

static int open_files(void) {
    int count = 0;
    for (int i = 0; i < 256; i++) count += fcntl(i, F_GETFD) >= 0;
    return count;
}

/* Opens `program`, scores one batch of n and expects `message` (NULL: success). All its processes must have ended
 * afterwards. */
static void run_program(const char *program, double timeout, int n, const char *message) {
    Rewards r;
    Error e;
    const int before = open_files();
    /* all processes of the program inherit this pipe: it reads as closed when the last of them has ended */
    int alive[2];
    char end;
    assert_int_equal(pipe(alive), 0);
    RewardInput *in = xcalloc((size_t)n, sizeof *in);
    float *part = xcalloc((size_t)n, sizeof *part), *total = xcalloc((size_t)n, sizeof *total);
    for (int i = 0; i < n; i++) in[i] = (RewardInput){.prompt = "p", .completion = "c", .answer = "a", .task = ""};
    assert_true(rewards_open(&r, NULL, program, timeout, 1, 0, &e));
    close(alive[1]);
    const bool good = rewards_score(&r, in, n, part, total, &e);
    if (good != !message) fail_msg("%s: %s", program, good ? "no error" : e.text);
    if (message) {
        assert_message(&e, message);
        assert_message(&e, "reward command '");
        assert_int_equal(r.command.worker[0].process.pid, 0);
        assert_false(rewards_score(&r, in, n, part, total, &e));
        assert_message(&e, "has ended");
    }
    rewards_close(&r);
    assert_int_equal(read(alive[0], &end, 1), 0);
    close(alive[0]);
    assert_int_equal(open_files(), before);
    free(in), free(part), free(total);
}

static void test_command_faults(void **state) {
    (void)state;
    run_program("while read x; do echo 0.5; done", 20, 3, NULL);
    run_program("sleep 0.3; while read x; do sleep 0.05; echo 1; done", 20, 3, NULL);
    run_program("cat >/dev/null & yes 2>/dev/null | head -n 3; sleep 100", 20, 3, "'y'");
    run_program("exit 3", 20, 3, "ended with exit status 3 after 0 of 3 answers");
    run_program("/no/such/program", 20, 3, "exit status 127 (command not found)");
    run_program("kill -9 $$", 20, 3, "killed by signal 9 (Killed) after 0 of 3 answers");
    run_program("read x; echo 1; read x; echo 2; exit 0", 20, 3, "ended with exit status 0 after 2 of 3 answers");
    run_program("read x; echo 1; kill -SEGV $$", 20, 3, "killed by signal 11");
    run_program("sleep 1000", 0.3, 3, "0 of 3 answers after 0.3 seconds");
    run_program("read x; echo 1; read x; sleep 1000 & sleep 1000", 2, 3, "1 of 3 answers after 2 seconds");
    run_program("trap '' TERM INT HUP; read x; sleep 1000", 0.3, 3, "0 of 3 answers");
    run_program("while read x; do printf 0.25; done; sleep 100", 0.3, 2, "then '0.250.25' without a newline");
    run_program("while read x; do echo good; done", 20, 3, "answer 1 of 3 is 'good', must be a number or null");
    run_program("while read x; do echo; done", 20, 3, "answer 1 of 3 is '', must be a number or null");
    run_program("read x; echo 1; read x; echo 0.5 0.5; sleep 100", 20, 3, "answer 2 of 3 is '0.5 0.5'");
    run_program("while read x; do echo inf; done", 20, 3, "'inf'");
    run_program("while read x; do echo 1e99; done", 20, 3, "'1e99'");
    run_program("read x; yes 1 | tr -d '\\n'", 20, 3, "has no newline after 4095 bytes");
    run_program("read x; printf '1\\n1\\n'; sleep 100", 20, 1, "one answer more than");
    run_program("read x; printf '1\\n1'; sleep 100", 20, 1, "after its last answer");
    run_program("exec <&-; sleep 100", 20, 5000, "closed its input after 0 of 5000 answers but is still running");
    run_program("exec >&-; sleep 100", 20, 3, "closed its output after 0 of 3 answers but is still running");
    run_program("while read x; do echo ' null '; done", 20, 3, NULL);
    run_program("sleep 1000 & while read x; do echo 1; done", 20, 3, NULL); /* a grandchild, killed on close */
}

/* The values are returned in order, null is NaN, the process continues between batches and gets all fields. */
static void test_command_values(void **state) {
    (void)state;
    Rewards r;
    Error e;
    RewardInput in[3] = {{.prompt = "say \"hi\"\n",
                          .completion = "tab\tq",
                          .answer = "7",
                          .task = "add",
                          .fields = "{\"level\":2,\"answer\":\"no\"}"},
                         {.prompt = "\xff", .completion = "a\xc3\xa9\xc3z\xed\xa0\x80", .answer = "8"},
                         {.completion = "", .answer = "nan"}};
    float part[6], total[3];
    char path[] = "/tmp/llmc_rewards.XXXXXX", program[300], line[300];
    const int file = mkstemp(path);
    close(file);
    snprintf(
        program, sizeof program,
        "n=0; while read -r x; do printf '%%s\\n' \"$x\" >> %s; n=$((n+1)); case $n in 2) echo null;; 3) echo nan;; *) echo -$n.5;; esac; done",
        path);
    in[0].completion = "1";
    in[1].task = "exact";
    in[2].task = "exact";
    assert_true(rewards_open(&r, "numeric:10,command:2", program, 20, 1, 0, &e));
    const pid_t pid = r.command.worker[0].process.pid;
    in[0].completion = "tab\t7";
    assert_true(rewards_score(&r, in, 3, part, total, &e));
    assert_float_equal(part[1], -1.5, 0);
    assert_true(isnan(part[3]) && isnan(part[5]));
    assert_float_equal(total[0], 7, 0); /* 10 * 1 - 2 * 1.5 */
    assert_float_equal(total[1], 0, 0); /* the number is wrong, and the program returns null */
    assert_true(isnan(total[2]));       /* "nan" is no number to compare with, so there is no verdict */
    assert_true(rewards_score(&r, in, 1, part, total, &e));
    assert_float_equal(part[1], -4.5, 0);
    assert_int_equal(r.command.worker[0].process.pid, pid);
    rewards_close(&r);
    FILE *f = fopen(path, "r");
    assert_non_null(fgets(line, sizeof line, f));
    assert_string_equal(
        line,
        "{\"prompt\":\"say \\\"hi\\\"\\n\",\"completion\":\"tab\\t7\",\"answer\":\"7\",\"task\":\"add\",\"level\":2}\n");
    assert_non_null(fgets(line, sizeof line, f));
    assert_string_equal(
        line,
        "{\"prompt\":\"\uFFFD\",\"completion\":\"a\u00e9\uFFFDz\uFFFD\uFFFD\uFFFD\",\"answer\":\"8\",\"task\":\"exact\"}\n");
    fclose(f);
    remove(path);
}

/* 5,000 lines of 5 kB to a program that answers each line at once, in blocks, or only after it has read everything. */
static void test_command_large(void **state) {
    (void)state;
    enum { N = 5000 };
    static const struct {
        const char *program;
        int n;
    } cases[] = {{"while read -r x; do echo 1; done", 20}, /* a shell reads byte by byte */
                 {"perl -ne '$| = 1; print \"1\\n\"'", N},
                 {"perl -ne 'print \"1\\n\"; $| = $. >= 5000'", N},
                 {"head -n 5000 >/dev/null; yes 1 | head -n 5000; cat", N}};
    char *text = repeated("words and \"quotes\" ", 250);
    RewardInput *in = xcalloc(N, sizeof *in);
    float *part = xcalloc(N, sizeof *part), *total = xcalloc(N, sizeof *total);
    Error e;
    for (int i = 0; i < N; i++) in[i] = (RewardInput){.completion = text, .answer = "1"};
    for (size_t k = 0; k < COUNT(cases); k++) {
        Rewards r;
        const int n = cases[k].n;
        assert_true(rewards_open(&r, "command", cases[k].program, 60, 1, 0, &e));
        if (!rewards_score(&r, in, n, part, total, &e)) fail_msg("%s", e.text);
        for (int i = 0; i < n; i++) assert_float_equal(total[i], 1, 0);
        rewards_close(&r);
    }
    free(in), free(part), free(total), free(text);
}

/* Several workers answer what one does, in the order of the completions; a group is one line with a list. */
static void test_command_workers(void **state) {
    (void)state;
    enum { N = 100 };
    static const char *const programs[] = {
        "sed -u 's/.*\"completion\":\"\\([0-9]*\\)\".*/\\1/'",
        "perl -ne '$| = 1; select undef, undef, undef, 0.002; /completion\":\"(\\d+)/ and print \"$1\\n\"'",
        ("perl -ne '$| = 1; @x = /completion\":\"(\\d+)/g; $n = @x; print \"[\" . "
         "join(\",\", map { /7$/ ? \"null\" : $n * 1000 + $_ } @x) . \"]\\n\"'")};
    RewardInput in[N];
    float part[N], total[N];
    char text[N][8];
    Error e;
    for (int i = 0; i < N; i++) {
        snprintf(text[i], sizeof text[i], "%d", i);
        in[i] = (RewardInput){.completion = text[i], .group = i / 4};
    }
    for (int workers = 1; workers <= 8; workers += workers == 1 ? 2 : 5)
        for (int kind = 0; kind < 3; kind++) {
            Rewards r;
            const int before = open_files();
            assert_true(rewards_open(&r, "command", programs[kind], 20, 1, 0, &e));
            assert_true(rewards_workers(&r, workers, kind == 2, &e));
            assert_int_equal(r.command.workers, workers);
            for (int times = 0; times < 2; times++) {
                const int n = times ? N - 4 : N;
                if (!rewards_score(&r, in, n, part, total, &e)) fail_msg("%s", e.text);
                for (int i = 0; i < n; i++) {
                    if (kind == 2 && isnan(total[i])) assert_int_equal(i % 10, 7);
                    else assert_float_equal(total[i], kind == 2 ? 4000 + i : i, 0);
                }
            }
            rewards_close(&r);
            assert_int_equal(open_files(), before);
        }
    static const struct {
        const char *program, *message;
    } bad[] = {{"while read -r x; do echo 1; done", "is '1', must be a list of 4 numbers or nulls"},
               {"while read -r x; do echo '[1,2,3]'; done", "must be a list of 4 numbers"},
               {"while read -r x; do echo '[1,2,3,\"4\"]'; done", "must be a list of 4 numbers"},
               {"while read -r x; do echo '[1,2,3,1e99]'; done", "must be a list of 4 numbers"},
               {"read -r x; printf '[1,2,3,4]\\n[1'; sleep 100", " of 3 answers after 0.3 seconds"},
               {"read -r x; exit 0", "ended with exit status 0 after 0 of "}};
    for (size_t i = 0; i < COUNT(bad); i++) {
        Rewards r;
        assert_true(rewards_open(&r, "command", bad[i].program, i == 4 ? 0.3 : 20, 1, 0, &e));
        assert_true(rewards_workers(&r, 9, true, &e));
        assert_false(rewards_score(&r, in, N, part, total, &e));
        assert_message(&e, bad[i].message);
        assert_false(rewards_score(&r, in, N, part, total, &e));
        assert_message(&e, "has ended");
        rewards_close(&r);
    }
}

/* A write to a dead program must not end this process, whatever SIGPIPE's action is, and must leave no signal
 * pending. */
static void test_command_sigpipe(void **state) {
    (void)state;
    sigset_t pending;
    struct sigaction old, standard = {.sa_handler = SIG_DFL};
    sigaction(SIGPIPE, &standard, &old);
    Rewards r;
    Error e;
    char *text = repeated("x", 1 << 20);
    const RewardInput in = {.completion = text};
    float part, total;
    assert_true(rewards_open(&r, NULL, "exec <&-; sleep 0.2; exit 4", 20, 1, 0, &e));
    assert_false(rewards_score(&r, &in, 1, &part, &total, &e));
    assert_message(&e, "exit status 4");
    rewards_close(&r);
    sigpending(&pending);
    assert_false(sigismember(&pending, SIGPIPE));
    sigaction(SIGPIPE, &old, NULL);
    free(text);
}

/* What the program reads: the rendered prompt, and the messages of which it was made. */
static void test_command_line(void **state) {
    (void)state;
    const RewardInput in = {.prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
                            .completion = "x",
                            .answer = "",
                            .task = "",
                            .fields = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"level\":2}"};
    size_t n;
    char *line = reward_command_line(&in, &n);
    assert_true(n == strlen(line) && line[n - 1] == '\n');
    json_t *row = json_loads(line, 0, NULL);
    const char *prompt, *role, *content;
    int level;
    assert_int_equal(json_unpack(row, "{s:s, s:[{s:s, s:s!}!], s:i}", "prompt", &prompt, "messages", "role", &role,
                                 "content", &content, "level", &level),
                     0);
    assert_string_equal(prompt, in.prompt);
    assert_string_equal(role, "user");
    assert_string_equal(content, "hi");
    assert_int_equal(level, 2);
    json_decref(row);
    free(line);
}

static void assert_says(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("\"%s\" is not in \"%s\"", part, text);
}

/* A program in the sandbox: several workers over many batches, what it can and cannot reach, and how it ends. */
static void test_reward_sandbox(void **state) {
    (void)state;
    Rewards r;
    Error e;
    SandboxOptions box = sandbox_defaults();
    if (!rewards_open_in(&r, "command", "sed -u s/.*/0.5/", 20, &box, 1, 0, &e)) {
        assert_says(e.text, "sandbox: bwrap");
        print_message("%s\n", e.text);
        box.kind = SANDBOX_LANDLOCK;
        if (!rewards_open_in(&r, "command", "sed -u s/.*/0.5/", 20, &box, 1, 0, &e)) skip();
    }
    rewards_close(&r);
    static const char *const program =
        "test -r Makefile && read=1 || read=0; (: >kept) 2>/dev/null && wrote=1 || wrote=0; : >${TMPDIR:-/tmp}/own && own=1; "
        "exec python3 -uc '\n"
        "import socket, sys\n"
        "try: socket.socket(socket.AF_INET, socket.SOCK_STREAM); net = 1\n"
        "except OSError: net = 0\n"
        "for k, line in enumerate(sys.stdin): print([int(sys.argv[1]), int(sys.argv[2]), net, int(sys.argv[3])][k % 4])\n"
        "' $read $wrote $own";
    assert_true(rewards_open_in(&r, "command", program, 20, &box, 1, 0, &e));
    assert_true(rewards_workers(&r, 2, false, &e));
    for (int step = 0; step < 3; step++) {
        enum { MANY = 800 };
        RewardInput in[MANY];
        float scores[MANY], parts[MANY];
        for (int i = 0; i < MANY; i++)
            in[i] = (RewardInput){.prompt = "p", .completion = "c", .answer = "", .task = "", .fields = ""};
        if (!rewards_score(&r, in, MANY, parts, scores, &e)) fail_msg("%s", e.text);
        static const float wanted[] = {1, 0, 0, 1};
        for (int i = 0; i < MANY; i++) assert_float_equal(scores[i], wanted[i / 2 % 4], 0);
    }
    rewards_close(&r);
    assert_int_equal(access("kept", F_OK), -1);
    /* a program that ends, and one that does not */
    assert_true(rewards_open_in(&r, "command", "exit 7", 20, &box, 1, 0, &e));
    RewardInput one = {.prompt = "p", .completion = "c", .answer = "", .task = "", .fields = ""};
    float score, part;
    assert_false(rewards_score(&r, &one, 1, &part, &score, &e));
    assert_says(e.text, "ended with exit status 7 after 0 of 1 answers");
    rewards_close(&r);
    assert_true(rewards_open_in(&r, "command", "sleep 60 & sleep 60", 0.2, &box, 1, 0, &e));
    assert_false(rewards_score(&r, &one, 1, &part, &score, &e));
    assert_says(e.text, "0 of 1 answers after 0.2 seconds");
    rewards_close(&r);
    /* there is no step down */
    box.command = "false";
    assert_false(rewards_open_in(&r, "command", "sed -u s/.*/0.5/", 20, &box, 1, 0, &e));
    assert_says(e.text, "sandbox: ");
    box = (SandboxOptions){.kind = SANDBOX_NONE, .memory = 1024};
    assert_false(rewards_open_in(&r, "command", "sed -u s/.*/0.5/", 20, &box, 1, 0, &e));
    assert_string_equal(e.text, "sandbox: none is no sandbox");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_planted),
                                       cmocka_unit_test(test_nasty),
                                       cmocka_unit_test(test_numbers),
                                       cmocka_unit_test(test_bytes),
                                       cmocka_unit_test(test_math),
                                       cmocka_unit_test(test_squad),
                                       cmocka_unit_test(test_text),
                                       cmocka_unit_test(test_check_answer),
                                       cmocka_unit_test(test_final_answer),
                                       cmocka_unit_test(test_golden),
                                       cmocka_unit_test(test_other_parts),
                                       cmocka_unit_test(test_specification),
                                       cmocka_unit_test(test_command_faults),
                                       cmocka_unit_test(test_command_values),
                                       cmocka_unit_test(test_command_large),
                                       cmocka_unit_test(test_command_workers),
                                       cmocka_unit_test(test_command_sigpipe),
                                       cmocka_unit_test(test_command_line),
                                       cmocka_unit_test(test_gsm8k_rewritten),
                                       cmocka_unit_test(test_reward_sandbox)};
    return cmocka_run_group_tests_name("rewards", tests, NULL, NULL);
}
