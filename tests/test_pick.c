/* test_pick.c - ./data/pick as a user runs it: conditions against a table of their meaning, every choice among rows against a
 * choice computed here from the same rows, members of rows against jansson, ROUGE-L against Google's rouge_score, invalid
 * input.
 *
 * Needs data/pick and data/make_shard. */
#include "../data/condition.h"      /* Condition, condition_parse, condition_free, condition_holds */
#include "../data/words.h"          /* Words, words_free, words_split, words_rouge, ... */
#include "../llmc/base/error.h"     /* checked, Error, xcalloc */
#include "../llmc/base/json_scan.h" /* JsonScan, json_scan, json_scan_free, json_scan_want */
#include "../llmc/base/jsonl.h"     /* Jsonl, jsonl_close, jsonl_next, jsonl_open */
#include "../llmc/base/random.h"    /* random_below, Random, random_start */
#include "../llmc/base/text.h"      /* TextBuffer, text_format, text_free */
#include "files.h"                  /* files_assert_error */
#include "models.h"                 /* refused, lines_of, json_text_of, json_line_of, ... */
#include "run.h"                    /* sh */
#include "shell.h"                  /* out, run, said, assert_holds, ... */

static const Jsonl place = {.name = "x", .line = 7};

/* ---- conditions ------------------------------------------------------------------------------------------------ */

#define ROW                                                                                                            \
    "{\"n\":3,\"z\":0.5,\"t\":\"abc\",\"u\":\"\xC3\xA9t\xC3\xA9\",\"yes\":true,\"no\":false,\"nil\":null,"             \
    "\"list\":[1,2,3],\"o\":{\"k\":[{\"v\":7}]},\"a b\":1,\"and_more\":4,\"len\":2,\"order\":5}"

static void conditions_hold(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int holds; /* -1: a clash of types */
    } cases[] = {
        {"yes", 1},
        {"no", 0},
        {"nil", 0},
        {"missing", 0},
        {"not missing", 1},
        {"true", 1},
        {"null", 0},
        {"n == 3", 1},
        {"n == 3.0", 1},
        {"n != 3", 0},
        {"n < 3.5 and n > 2.5", 1},
        {"n <= 3 and n >= 3", 1},
        {"z == .5", 1},
        {"-1 < z", 1},
        {"n < -2", 0},
        {"t == 'abc'", 1},
        {"t == \"abc\"", 1},
        {"t < 'abd'", 1},
        {"t > 'ab'", 1},
        {"t != 'x\\'y'", 1},
        {"missing == 3", 0},
        {"missing != 3", 0},
        {"nil == null", 0},
        {"not nil == 1", 1},
        {"yes == true", 1},
        {"yes != no", 1},
        {"has(n)", 1},
        {"has(nil)", 0},
        {"has(o.k.0.v)", 1},
        {"has(o.k.1.v)", 0},
        {"o.k.0.v == 7", 1},
        {"len(t) == 3", 1},
        {"len(u) == 3", 1},
        {"len(list) == 3", 1},
        {"len(o) == 1", 1},
        {"len(missing) > 0", 0},
        {"list < 4", 1},
        {"list < 3", 0},
        {"matches(t, /^A.C$/i)", 1},
        {"matches(t, /^A.C$/)", 0},
        {"matches(t, /a\\/b|bc/)", 1},
        {"matches(missing, /./)", 0},
        {"{a b} == 1", 1},
        {"and_more == 4", 1},
        {"len == 2", 1},
        {"order == 5", 1},
        {"no or yes and no", 0},
        {"yes or yes and no", 1},
        {"(yes or yes) and no", 0},
        {"not no and yes", 1},
        {"not (no and yes)", 1},
        {"not not yes", 1},
        {"no and t > 3", 0}, /* the clash is not reached */
        {"yes or t > 3", 1},
        {" \t( ( yes ) )\n", 1},
        {"t > 3", -1},
        {"n == 'x'", -1},
        {"yes < no", -1},
        {"yes == 1", -1},
        {"n", -1},
        {"t and yes", -1},
        {"not n", -1},
        {"list == t", -1},
        {"o == o", -1},
        {"matches(n, /3/)", -1},
        {"len(n)", -1},
    };
    json_t *row = json_loads(ROW, 0, NULL);
    assert_non_null(row);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Condition c;
        Error e;
        bool holds;
        if (!condition_parse(&c, cases[i].text, &e)) fail_msg("%s: %s", cases[i].text, e.text);
        const bool ok = condition_holds(&c, &place, row, &holds, &e);
        if (ok ? holds != cases[i].holds : cases[i].holds >= 0)
            fail_msg("%s: %d, expected %d: %s", cases[i].text, ok ? holds : -1, cases[i].holds, ok ? "" : e.text);
        if (!ok) files_assert_error(&e, "x: line 7: field '");
        condition_free(&c);
    }
    json_decref(row);
}

static void conditions_refused(void **state) {
    (void)state;
    static const char *const wrong[][2] = {
        {"", "expected a field"},
        {"n ==", "expected a field, a number or a text"},
        {"n = 3", "'= 3': expected 'and', 'or' or the end"},
        {"n == 3 4", "'4': expected 'and'"},
        {"(yes", "expected ')'"},
        {"yes)", "')': expected"},
        {"and", "'and': expected"},
        {"yes and", "ends after"},
        {"t == 'abc", "no closing '"},
        {"matches(t, abc)", "must be /pattern/flags"},
        {"matches(t, /(/)", "pattern /(/"},
        {"matches(t)", "expected ','"},
        {"len t", "'t': expected"},
        {"len(3)", "'3)': expected the name of a field"},
        {"n == 3x", "expected a number"},
        {"{a b", "expected the name of a field"},
        {"n == 1e999", "expected a number"},
        {"n < 3 < 4", "'< 4': expected"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        Condition c;
        Error e;
        if (condition_parse(&c, wrong[i][0], &e)) fail_msg("%s: accepted", wrong[i][0]);
        if (!strstr(e.text, wrong[i][1])) fail_msg("%s: %s", wrong[i][0], e.text);
    }
    char deep[2000];
    memset(deep, '(', sizeof deep);
    deep[sizeof deep - 1] = 0;
    Condition c;
    Error e;
    assert_false(condition_parse(&c, deep, &e));
    files_assert_error(&e, "nested more than");
}

/* ---- words ----------------------------------------------------------------------------------------------------- */

static void rouge_is_googles(void **state) {
    (void)state;
    Jsonl j;
    Error e;
    json_t *row;
    Words w[2] = {{0}, {0}};
    int pairs = 0, partly = 0;
    const char *path = getenv("ROUGE_PAIRS") ? getenv("ROUGE_PAIRS") : "tests/golden/rouge.jsonl.zst";
    if (!jsonl_open(&j, path, false, &e)) fail_msg("%s", e.text);
    while (jsonl_next(&j, &row, &e) > 0) {
        for (int i = 0; i < 2; i++) {
            const json_t *text = json_object_get(row, i ? "b" : "a");
            w[i].count = 0;
            words_split(&w[i], json_string_value(text), json_string_length(text));
        }
        const double want = json_number_of(row, "f"), got = words_rouge(w[0].word, w[0].count, w[1].word, w[1].count);
        if (fabs(got - want) > 1e-15) fail_msg("pair %d: %.17g, expected %.17g", pairs, got, want);
        assert_true(words_rouge(w[1].word, w[1].count, w[0].word, w[0].count) == got);
        partly += want > 0 && want < 1;
        pairs++;
    }
    assert_true(pairs >= 1000 && partly > pairs / 2);
    jsonl_close(&j), words_free(&w[0]), words_free(&w[1]);
}

/* A text of n words of a vocabulary of v. */
static void random_text(Random *r, int n, int v, char *text) {
    for (int i = 0; i < n; i++) text += sprintf(text, "%sw%d", i ? " " : "", (int)random_below(r, (uint64_t)v));
}

/* LCS by the table of the textbook. */
static size_t plain_lcs(const Words *a, const Words *b) {
    size_t *row = (size_t *)xcalloc(b->count + 1, sizeof *row);
    for (size_t i = 0; i < a->count; i++)
        for (size_t k = 0, corner = 0; k < b->count; k++) {
            const size_t above = row[k + 1];
            row[k + 1] = a->word[i] == b->word[k] ? corner + 1 : row[k] > above ? row[k] : above;
            corner = above;
        }
    const size_t length = row[b->count];
    free(row);
    return length;
}

/* Dropping near rows finds every pair that comparing all with all finds. */
static void near_misses_no_pair(void **state) {
    (void)state;
    enum { TEXTS = 300 };
    static Words w[TEXTS];
    char text[2000];
    const double limits[] = {0, 0.3, 0.5, 0.7, 1};
    Random r = random_start(3, 1);
    for (int i = 0; i < TEXTS; i++) {
        random_text(&r, (int)random_below(&r, i % 10 ? 12 : 150), 8, text);
        words_split(&w[i], text, strlen(text));
    }
    for (size_t k = 0; k < sizeof limits / sizeof *limits; k++) {
        bool kept[TEXTS];
        int dropped = 0;
        Near n = {.limit = limits[k]};
        for (int i = 0; i < TEXTS; i++) {
            const int group = i % 3 == 0;
            kept[i] = true;
            for (int p = 0; p < i && kept[i]; p++)
                if (kept[p] && (p % 3 == 0) == group &&
                    words_f1(plain_lcs(&w[i], &w[p]), w[i].count, w[p].count) > limits[k])
                    kept[i] = false;
            dropped += !kept[i];
            if (near_drops(&n, &w[i], (uint64_t)group) == kept[i]) fail_msg("limit %g, text %d", limits[k], i);
        }
        assert_true(limits[k] == 1 ? !dropped : dropped > 10 && dropped < TEXTS);
        near_free(&n);
    }
    for (int i = 0; i < TEXTS; i++) words_free(&w[i]);
}

/* The share of a test text that a row covers, from its definition. */
static double plain_overlap(const Words *row, const Words *test, size_t ngram) {
    const size_t n = test->count < ngram ? test->count : ngram;
    size_t covered = 0;
    for (size_t i = 0; i < test->count; i++) {
        bool in = false;
        for (size_t from = i + 1 > n ? i + 1 - n : 0; from <= i && from + n <= test->count && !in; from++)
            for (size_t at = 0; at + n <= row->count && !in; at++)
                in = !memcmp(row->word + at, test->word + from, n * sizeof *row->word);
        covered += in;
    }
    return test->count ? (double)covered / (double)test->count : 0;
}

static void contamination_is_overlap(void **state) {
    (void)state;
    enum { TESTS = 20, ROWS = 200 };
    static Words test[TESTS], row;
    char text[2000];
    Random r = random_start(4, 1);
    const double overlaps[] = {0, 0.3, 0.5, 0.9};
    for (int i = 0; i < TESTS; i++) {
        random_text(&r, (int)random_below(&r, 20), 4, text);
        words_split(&test[i], text, strlen(text));
    }
    for (size_t k = 0; k < 4; k++) {
        Contamination c = {.ngram = 5, .overlap = overlaps[k]};
        int drops = 0;
        for (int i = 0; i < TESTS; i++) contamination_add(&c, &test[i]);
        for (int i = 0; i < ROWS; i++) {
            double most = 0;
            random_text(&r, 25, 4, text);
            row.count = 0;
            words_split(&row, text, strlen(text));
            for (int t = 0; t < TESTS; t++) {
                /* a test text of one or two words is in nearly every row */
                const double share = plain_overlap(&row, &test[t], 5);
                if (share > most) most = share;
            }
            assert_int_equal(contamination_drops(&c, &row), most > overlaps[k]);
            drops += most > overlaps[k];
        }
        assert_true(drops > 0);
        contamination_free(&c);
    }
    for (int i = 0; i < TESTS; i++) words_free(&test[i]);
    words_free(&row);
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

enum { ROWS = 600, GROUPS = 60, SAID = 12 };

/* The rows of samples.jsonl: groups whose rows are not adjacent, rewards with ties and nulls, repeated completions. */
static struct Sample {
    int index, said;
    double reward; /* NaN: null */
    int right;     /* -1: null */
} sample[ROWS];

static void put_samples(void) {
    Random r = random_start(1, 1);
    TextBuffer rows = {0};
    for (int i = 0; i < ROWS; i++) {
        struct Sample *s = &sample[i];
        s->index = (int)random_below(&r, GROUPS);
        s->said = (int)random_below(&r, SAID);
        s->reward = random_below(&r, 20) ? (double)random_below(&r, 8) / 4 : NAN;
        s->right = random_below(&r, 20) ? random_below(&r, GROUPS) < (uint64_t)s->index : -1;
        char reward[20] = "null";
        if (!isnan(s->reward)) snprintf(reward, sizeof reward, "%g", s->reward);
        text_format(&rows,
                    "{\"prompt\":\"p%d\",\"index\":%d,\"completion\":\"c%d\",\"answer\":\"c3\",\"right\":%s,"
                    "\"reward\":%s,\"row\":%d}\n",
                    s->index, s->index, s->said,
                    s->right < 0 ? "null"
                    : s->right   ? "true"
                                 : "false",
                    reward, i);
    }
    put("samples.jsonl", rows.text);
    text_free(&rows);
}

/* Runs pick on the samples and returns, in number[], the field `row` of each line. Returns their count. */
static int picked(const char *arguments, int number[ROWS]) {
    char command[600];
    snprintf(command, sizeof command, "data/pick -i $T/samples.jsonl %s", arguments);
    run(0, command);
    const int n = lines_of(out);
    const char *line = out;
    for (int i = 0; i < n && i < ROWS; i++, line = strchr(line, '\n') + 1) {
        json_t *row = json_line_of(line, 0);
        number[i] = (int)json_number_of(row, "row");
        json_decref(row);
    }
    return n;
}

static void assert_rows(const char *arguments, const bool want[ROWS]) {
    int number[ROWS], at = 0;
    const int n = picked(arguments, number);
    for (int i = 0; i < ROWS; i++) {
        if (!want[i]) continue;
        if (at == n || number[at] != i) fail_msg("%s: row %d is missing", arguments, i);
        at++;
    }
    if (at != n) fail_msg("%s: %d rows, expected %d", arguments, n, at);
}

/* A row as json_scan() reads it and as jansson does. Returns whether it was accepted. */
static bool scanned(JsonScan *scan, const char *text) {
    const size_t n = strlen(text);
    json_t *row = json_loadb(text, n, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, NULL);
    const bool accepted = json_scan(scan, text, n);
    if (accepted && !json_is_object(row)) fail_msg("%s: jansson rejects it", text);
    size_t found = 0;
    for (int i = 0; accepted && i < scan->count; i++) {
        const char *name = scan->want[i].name;
        const json_t *want = json_object_get(row, name), *is = json_object_get(scan->row, name);
        if (want ? !is || !json_equal(want, is) : is != NULL) fail_msg("%s: member '%s' differs", text, name);
        found += want != NULL;
    }
    assert_true(!accepted || json_object_size(scan->row) == found);
    json_decref(row);
    return accepted;
}

/* Rows of samples are read without jansson, and their members are those of jansson; what it rejects is not accepted, wherever a
 * character is put in, replaced or left out. */
static void scanned_members(void **state) {
    (void)state;
    static const char *const rows[] = {
        ("{\"index\":12,\"right\":true,\"completion\":\"a \\\"b\\\" \\u00e9\\n\",\"reward\":-0.25,"
         "\"rewards\":{\"verify\":1,\"x\":[]}}"),
        " { \"right\" : false , \"a.b\" : [ 1 , null , { } ] , \"tokens\" : [1,2,3] } ",
        "{\"index\":{\"a\":{\"index\":1}},\"reward\":1.5e-05,\"right\":null}", "{}",
        "{\"completion\":\"\",\"index\":-0,\"reward\":0.0}"};
    static const char *const left[] = {"{\"index\":12345678901234567890}", "{\"a\\u0062\":1}",
                                       "{\"x\":\"\\ud83d\\ude00\"}", "{\"reward\":1e999}"};
    static const char *const bad[] = {"{\"a\":1,\"a\":2}",
                                      "{\"o\":{\"k\":1,\"k\":1}}",
                                      "{\"a\":01}",
                                      "{\"a\":1.}",
                                      "{\"a\":-}",
                                      "{\"a\":\"\t\"}",
                                      "{\"a\":1}}",
                                      "{\"a\":1,}",
                                      "{\"a\":tru}",
                                      "[1]",
                                      "",
                                      "{\"a\":\"\\x\"}"};
    JsonScan scan = {0};
    char text[300];
    const char *const names[] = {"index", "right", "completion", "reward", "a.b", "a"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) json_scan_want(&scan, names[i], strlen(names[i]));
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) assert_false(scanned(&scan, left[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(scanned(&scan, bad[i]));
    int accepted = 0, tried = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!scanned(&scan, rows[i])) fail_msg("%s: left to jansson", rows[i]);
        for (size_t at = 0; rows[i][at]; at++)
            for (const char *c = "\"\\{}[],:0-.eu tn\x01"; *c; c++) {
                for (int how = 0; how < 3; how++, tried++) { /* before the byte, in its place, and without it */
                    const size_t rest = at + (how > 0);
                    snprintf(text, sizeof text, "%.*s%.*s%s", (int)at, rows[i], how < 2, c, rows[i] + rest);
                    accepted += scanned(&scan, text);
                }
            }
    }
    assert_true(accepted > tried / 20 && accepted < tried / 2);
    json_scan_free(&scan);
}

/* The rows of an array, whose fields are all read, and lines, of which only those that are needed: the choices are the same. */
static void lines_and_arrays(void **state) {
    (void)state;
    static const char *const choices[] = {"--where 'right and reward >= 0.75'",
                                          "--group index --best 2 --by reward",
                                          "--group index --rate 0.2,0.8 --max-per-group 3 --seed 2",
                                          "--group index --pairs reward",
                                          "--group index --rankings reward --min-margin 0.3",
                                          "--sample 20 --seed 4",
                                          "--where 'has(right)' --group index --max-per-group 1 --as sft"};
    sh("(echo '['; sed '$!s/$/,/' $T/samples.jsonl; echo ']') >$T/array.json");
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        sh("for f in samples.jsonl array.json; do data/pick -q -i $T/$f %s -o $T/$f.out 2>$T/$f.said || exit 1; done; "
           "cmp $T/samples.jsonl.out $T/array.json.out && test -s $T/array.json.out && cmp $T/samples.jsonl.said $T/array.json.said",
           choices[i]);
}

static void filters(void **state) {
    (void)state;
    bool want[ROWS];
    /* without a filter, each line is as it was */
    run(0, "data/pick -i $T/samples.jsonl -q -o $T/same.jsonl && cmp $T/samples.jsonl $T/same.jsonl && "
           "data/pick -i $T/samples.jsonl -q --group index -o $T/same.jsonl && cmp $T/samples.jsonl $T/same.jsonl");
    for (int i = 0; i < ROWS; i++) want[i] = sample[i].right == 1 && sample[i].reward >= 0.75;
    assert_rows("--where 'right and reward >= 0.75'", want);
    /* repeated rows: of one prompt and completion; of a field */
    for (int i = 0; i < ROWS; i++) {
        want[i] = true;
        for (int k = 0; k < i; k++)
            if (sample[k].index == sample[i].index && sample[k].said == sample[i].said) want[i] = false;
    }
    assert_rows("--dedupe text", want);
    for (int i = 0; i < ROWS; i++) {
        want[i] = true;
        for (int k = 0; k < i; k++)
            if (sample[k].said == sample[i].said) want[i] = false;
    }
    assert_rows("--dedupe completion", want);
    /* the share of right rows of a group, over all its rows */
    for (int i = 0; i < ROWS; i++) {
        int right = 0, checked = 0;
        for (int k = 0; k < ROWS; k++)
            if (sample[k].index == sample[i].index && sample[k].right >= 0) right += sample[k].right, checked++;
        want[i] = checked && right >= 0.25 * checked && right <= 0.75 * checked && sample[i].right == 1;
    }
    assert_rows("--group index --rate 0.25,0.75 --where right", want);
    /* the best of a group; ties: the first rows */
    for (int i = 0; i < ROWS; i++) {
        int better = 0;
        for (int k = 0; k < ROWS; k++) {
            const double a = isnan(sample[k].reward) ? -1 : sample[k].reward,
                         b = isnan(sample[i].reward) ? -1 : sample[i].reward;
            better += sample[k].index == sample[i].index && (a > b || (a == b && k < i));
        }
        want[i] = better < 3;
    }
    assert_rows("--group index --best 3 --by reward", want);
}

/* Random choices: the right numbers, a function of the seed, each row about equally often, in order unless shuffled. */
static void random_choices(void **state) {
    (void)state;
    int number[ROWS], again[ROWS], often[ROWS] = {0}, size[GROUPS] = {0};
    char line[100];
    for (int i = 0; i < ROWS; i++) size[sample[i].index]++;
    for (int seed = 0; seed < 60; seed++) {
        int count[GROUPS] = {0}, want = 0;
        snprintf(line, sizeof line, "--group index --max-per-group 4 --seed %d", seed);
        const int n = picked(line, number);
        for (int i = 0; i < n; i++) {
            assert_true(!i || number[i] > number[i - 1]);
            count[sample[number[i]].index]++;
            often[number[i]]++;
        }
        for (int g = 0; g < GROUPS; g++) {
            assert_int_equal(count[g], size[g] < 4 ? size[g] : 4);
            want += count[g];
        }
        assert_int_equal(n, want);
        if (!seed) assert_true(picked(line, again) == n && !memcmp(number, again, (size_t)n * sizeof *number));
    }
    for (int i = 0; i < ROWS; i++) { /* binomial of 60 draws: within five standard deviations */
        const double p = size[sample[i].index] < 4 ? 1 : 4.0 / size[sample[i].index];
        assert_true(fabs(often[i] - 60 * p) <= 5 * sqrt(60 * p * (1 - p)) + 1e-9);
    }
    assert_int_equal(picked("--sample 50 --seed 2", number), 50);
    for (int i = 1; i < 50; i++) assert_true(number[i] > number[i - 1]);
    assert_int_equal(picked("--sample 50 --seed 2 --shuffle", again), 50);
    bool is[ROWS] = {false};
    int ascending = 0;
    for (int i = 0; i < 50; i++) is[again[i]] = true;
    for (int i = 0; i < 50; i++) assert_true(is[number[i]]); /* the same rows */
    for (int i = 1; i < 50; i++) ascending += again[i] > again[i - 1];
    assert_in_range(ascending, 14, 35);
    assert_int_equal(picked("--shuffle", number), ROWS);
    assert_int_equal(picked("--shuffle --seed 1", again), ROWS);
    assert_true(memcmp(number, again, sizeof number) != 0);
}

/* Checks the preference rows of the output: each is a pair of its group, `count` of them. */
static void pairs(void **state) {
    (void)state;
    int high[GROUPS], low[GROUPS], wanted = 0, all = 0;
    for (int g = 0; g < GROUPS; g++) high[g] = low[g] = -1;
    for (int i = 0; i < ROWS; i++) {
        const int g = sample[i].index;
        if (isnan(sample[i].reward)) continue;
        if (high[g] < 0 || sample[i].reward > sample[high[g]].reward) high[g] = i;
        if (low[g] < 0 || sample[i].reward < sample[low[g]].reward) low[g] = i;
    }
    for (int g = 0; g < GROUPS; g++)
        if (high[g] >= 0 && sample[high[g]].reward - sample[low[g]].reward > 1) wanted++;
    run(0, "data/pick -i $T/samples.jsonl --group index --pairs reward --min-margin 1 -o $T/pairs.jsonl && "
           "data/make_shard -i $T/pairs.jsonl -o $T/pairs.shard && cat $T/pairs.jsonl");
    assert_holds(said, "preference, ");
    assert_int_equal(lines_of(out), wanted);
    for (int i = 0; i < wanted; i++) {
        char text[20];
        json_t *row = json_line_of(out, i);
        const int g = atoi(json_text_of(row, "prompt") + 1);
        snprintf(text, sizeof text, "c%d", sample[high[g]].said);
        assert_string_equal(json_text_of(row, "chosen"), text);
        snprintf(text, sizeof text, "c%d", sample[low[g]].said);
        assert_string_equal(json_text_of(row, "rejected"), text);
        assert_near(json_number_of(row, "margin"), sample[high[g]].reward - sample[low[g]].reward, 0);
        assert_int_equal(json_object_size(row), 4);
        json_decref(row);
    }
    /* all pairs; a number of them for each group */
    int of_group[GROUPS] = {0}, most = 0;
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < ROWS; k++)
            if (sample[i].index == sample[k].index && sample[i].reward - sample[k].reward > 0) {
                of_group[sample[i].index]++;
                all++;
            }
    for (int g = 0; g < GROUPS; g++) most += of_group[g] < 5 ? of_group[g] : 5;
    run(0, "data/pick -i $T/samples.jsonl --group index --pairs reward --all-pairs");
    assert_int_equal(lines_of(out), all);
    run(0, "data/pick -i $T/samples.jsonl --group index --pairs reward --pairs-per-group 5 --as rows");
    assert_int_equal(lines_of(out), most);
    json_t *row = json_line_of(out, 0);
    assert_string_equal(json_text_of(row, "answer"), "c3"); /* both rows have it */
    assert_null(json_object_get(row, "row"));
    json_decref(row);

    /* true is above false */
    int decided = 0;
    for (int g = 0; g < GROUPS; g++) {
        bool has[2] = {false, false};
        for (int i = 0; i < ROWS; i++)
            if (sample[i].index == g && sample[i].right >= 0) has[sample[i].right] = true;
        decided += has[0] && has[1];
    }
    run(0, "data/pick -i $T/samples.jsonl --group index --pairs right");
    assert_int_equal(lines_of(out), decided);
}

/* The row that follows `last` (-1: none) in the ranking of group g: the first with the highest reward that is more than `margin`
 * below that of `last`, and whose completion is not in the ranking; -1: there is none. */
static int ranked_next(int g, int last, double margin, const bool *used) {
    int best = -1;
    for (int i = 0; i < ROWS; i++) {
        if (sample[i].index != g || isnan(sample[i].reward) || used[sample[i].said]) continue;
        if (last >= 0 && sample[last].reward - sample[i].reward <= margin) continue;
        if (best < 0 || sample[i].reward > sample[best].reward) best = i;
    }
    return best;
}

/* Sets row[] to the ranking of group g. Returns its length. */
static int ranking_of(int g, double margin, int row[ROWS]) {
    bool used[SAID] = {false};
    int k = 0;
    for (int next = -1; (next = ranked_next(g, next, margin, used)) >= 0; used[sample[next].said] = true)
        row[k++] = next;
    return k;
}

/* Every group becomes one ranking, and make_shard takes it. */
static void rankings(void **state) {
    (void)state;
    int row[ROWS], wanted = 0, longest = 0;
    for (int g = 0; g < GROUPS; g++) wanted += ranking_of(g, 0.4, row) > 1;
    run(0, "data/pick -i $T/samples.jsonl --group index --rankings reward --min-margin 0.4 -o $T/ranked.jsonl && "
           "data/make_shard -i $T/ranked.jsonl -o $T/ranked.shard && cat $T/ranked.jsonl");
    assert_holds(said, "preference, ");
    assert_null(strstr(said, "left out"));
    assert_holds(said, "too close to a better one");
    assert_int_equal(lines_of(out), wanted);
    for (int i = 0; i < wanted; i++) {
        json_t *made = json_line_of(out, i);
        const json_t *list = json_object_get(made, "completions");
        const int n = ranking_of(atoi(json_text_of(made, "prompt") + 1), 0.4, row);
        assert_int_equal(json_object_size(made), 2);
        assert_int_equal(json_array_size(list), n);
        for (int k = 0; k < n; k++)
            assert_int_equal(atoi(json_string_value(json_array_get(list, (size_t)k)) + 1), sample[row[k]].said);
        if (n > longest) longest = n;
        json_decref(made);
    }
    assert_true(wanted > 10 && longest > 3);

    /* at most three rows of a group; the fields in which they agree; a gold answer stays */
    run(0, "data/pick -i $T/samples.jsonl --group index --max-per-group 3 --rankings reward --as rows --stats");
    assert_true(lines_of(out) > 10);
    for (int i = 0; i < lines_of(out); i++) {
        json_t *made = json_line_of(out, i);
        assert_in_range(json_array_size(json_object_get(made, "completions")), 2, 3);
        assert_string_equal(json_text_of(made, "answer"), "c3");
        assert_null(json_object_get(made, "row"));
        assert_null(json_object_get(made, "completion"));
        json_decref(made);
    }
    put("r.jsonl", "{\"index\":0,\"prompt\":\"q\",\"reference\":\"g\",\"output\":\"a\",\"s\":0}\n"
                   "{\"index\":0,\"prompt\":\"q\",\"reference\":\"g\",\"output\":\"b\",\"s\":2}\n"
                   "{\"index\":0,\"prompt\":\"q\",\"reference\":\"g\",\"output\":\"b\",\"s\":1}\n"
                   "{\"index\":0,\"prompt\":\"q\",\"reference\":\"g\",\"output\":\"c\",\"s\":0}\n"
                   "{\"index\":0,\"prompt\":\"q\",\"reference\":\"g\",\"output\":\"d\",\"s\":null}\n"
                   "{\"index\":1,\"prompt\":\"r\",\"output\":\"e\",\"s\":true}\n"
                   "{\"index\":1,\"prompt\":\"r\",\"output\":\"f\",\"s\":1}\n");
    run(0, "data/pick -i $T/r.jsonl --group index --rankings s");
    assert_string_equal(out, "{\"prompt\":\"q\",\"completions\":[\"b\",\"a\"],\"reference\":\"g\"}\n");
    assert_holds(said, "7 rows read, 1 written, 1 without a value for --rankings, 2 too close to a better one, "
                       "1 with the completion of a better one, 1 groups without a ranking");
    put("s.jsonl", "{\"index\":0,\"prompt\":\"q\",\"completion\":\"a\",\"reward\":1}\n"
                   "{\"index\":0,\"prompt\":\"q\",\"completion\":\"b\",\"reward\":4}\n"
                   "{\"index\":0,\"prompt\":\"q\",\"completion\":\"c\",\"reward\":7}\n");
    run(0, "data/pick -i $T/s.jsonl --group index --rankings reward --min-margin 3.5 --stats");
    assert_holds(said, "reward    mean 4.0000 of the completions written"); /* c and a */
    run(0, "data/pick -i $T/s.jsonl --group index --pairs reward --stats");
    assert_holds(said, "reward    mean 4.0000 of the completions written");
    run(0, "data/pick -i $T/r.jsonl --group index --pairs s");
    assert_string_equal(out,
                        "{\"prompt\":\"q\",\"chosen\":\"b\",\"rejected\":\"a\",\"margin\":2.0,\"reference\":\"g\"}\n");
}

static void labels(void **state) {
    (void)state;
    int other = 0, checked = 0;
    for (int i = 0; i < ROWS; i++) {
        other += sample[i].said != 3;
        checked += sample[i].right >= 0;
    }
    run(0, "data/pick -i $T/samples.jsonl --spin");
    assert_int_equal(lines_of(out), other);
    json_t *row = json_line_of(out, 0);
    assert_string_equal(json_text_of(row, "chosen"), "c3");
    assert_int_equal(json_object_size(row), 3);
    json_decref(row);
    run(0, "data/pick -i $T/samples.jsonl --unpaired");
    assert_int_equal(lines_of(out), checked);
    row = json_line_of(out, 0);
    assert_true(json_is_boolean(json_object_get(row, "label")) && json_object_size(row) == 3);
    json_decref(row);
    run(0, "data/pick -i $T/samples.jsonl --unpaired -q | data/make_shard -i - -o $T/u.shard");
    assert_holds(said, "unpaired, ");
}

/* Rows with a judge's probability: the likelier completion is chosen, the margin is the log-odds. */
static void judged_pairs(void **state) {
    (void)state;
    static const double p[] = {0.9, 0.2, 0.55, 0.5, 1, 0.35};
    char text[1000] = "";
    for (int i = 0; i < 6; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "{\"prompt\":\"q%d\",\"chosen\":\"a\",\"rejected\":\"b\",\"p\":%g}\n", i, p[i]);
    strcat(text, "{\"prompt\":\"q6\",\"chosen\":\"a\",\"rejected\":\"b\",\"p\":null}\n");
    put("judged.jsonl", text);
    run(0, "./data/pick -i $T/judged.jsonl --pairs p --tie 0.1");
    assert_holds(said, "7 rows read, 4 written, 2 pairs too close to call, 1 without a value for --pairs");
    static const int kept[] = {0, 1, 4, 5};
    for (int i = 0; i < 4; i++) {
        json_t *row = json_line_of(out, i);
        const double q = fmax(p[kept[i]], 1 - p[kept[i]]), sure = fmin(q, 1 - 1e-12);
        assert_string_equal(json_text_of(row, "chosen"), p[kept[i]] > 0.5 ? "a" : "b");
        assert_string_equal(json_text_of(row, "rejected"), p[kept[i]] > 0.5 ? "b" : "a");
        assert_near(json_number_of(row, "margin"), log(sure / (1 - sure)), 1e-9 * json_number_of(row, "margin") + 1e-9);
        assert_null(json_object_get(row, "p"));
        json_decref(row);
    }
    put("odd.jsonl", "{\"chosen\":\"a\",\"rejected\":\"b\",\"p\":1.5}\n");
    run(1, "./data/pick -i $T/odd.jsonl --pairs p");
    assert_holds(said, "is 1.5, expected a probability");
    put("odd.jsonl", "{\"completion\":\"a\",\"p\":0.5}\n");
    run(1, "./data/pick -i $T/odd.jsonl --pairs p");
    assert_holds(said, "has no chosen and rejected; give --group");
    run(2, "./data/pick -i $T/odd.jsonl --pairs p --group index --tie 0.1");
    assert_holds(said, "--tie: used only with --pairs without --group");
}

static void equations(void **state) {
    (void)state;
    put("e.jsonl", "{\"prompt\":\"p\",\"completion\":\"2 + 3 = 5, so 5*2=10.\",\"row\":0}\n"
                   "{\"prompt\":\"p\",\"completion\":\"First 2+3=5. Then 5 * 2 = 10\",\"row\":1}\n"
                   "{\"prompt\":\"p\",\"completion\":\"5*2=10 as 2+3=5\",\"row\":2}\n"
                   "{\"prompt\":\"q\",\"completion\":\"2+3=5 and 5*2=10\",\"row\":3}\n"
                   "{\"prompt\":\"p\",\"completion\":\"ten\",\"row\":4}\n"
                   "{\"prompt\":\"p\",\"completion\":\"10\",\"row\":5}\n"
                   "{\"prompt\":\"p\",\"completion\":\" ten\\n\",\"row\":6}\n");
    run(0, "data/pick -i $T/e.jsonl --dedupe equations --drop prompt,completion");
    assert_string_equal(out, "{\"row\":0}\n{\"row\":2}\n{\"row\":3}\n{\"row\":4}\n{\"row\":5}\n");
}

static void fields(void **state) {
    (void)state;
    put("a.jsonl",
        "{\"id\":1,\"x\":\"a{b\",\"big\":123456789012345678901234567890,\"real\":0.1}\n{\"id\":2,\"x\":\"c\"}\n");
    put("b.jsonl", "[{\"id\":2,\"y\":{\"z\":[5]}},\n{\"id\":3}]");
    run(0, "data/pick -i $T/a.jsonl --join $T/b.jsonl --on id --set 'm={{{x}}} {id}\\n' --rename x=w --drop big,none "
           "--where 'id > 0 or nowhere'");
    assert_string_equal(out, "{\"id\":1,\"real\":0.1,\"m\":\"{a{b} 1\\n\",\"w\":\"a{b\"}\n"
                             "{\"id\":2,\"y\":{\"z\":[5]},\"m\":\"{c} 2\\n\",\"w\":\"c\"}\n");
    assert_holds(said, "1 rows have no row with the same id in");
    assert_holds(said, "--drop none: no row has this field");
    assert_holds(said, "--where: no row has the field 'nowhere'");
    assert_null(strstr(said, "no row has the field 'id'"));
    assert_null(strstr(said, "--drop big"));
    run(0, "data/pick -i $T/b.jsonl --where 'id == 2'");
    assert_string_equal(out, "{\"id\":2,\"y\":{\"z\":[5]}}\n");
    put("c.jsonl",
        "{\"prompt\":\"p\",\"task\":\"add\",\"answer\":\"4\",\"numbers\":[1],\"index\":0,\"sample\":1,"
        "\"completion\":\"4\",\"tokens\":[1],\"finished\":true,\"logprob\":-1,\"right\":true,\"reward\":1}\n");
    run(0, "data/pick -i $T/c.jsonl --as prompt");
    assert_string_equal(out, "{\"prompt\":\"p\",\"task\":\"add\",\"answer\":\"4\",\"numbers\":[1]}\n");
    run(0, "data/pick -i $T/c.jsonl --as sft --stats");
    assert_string_equal(out, "{\"prompt\":\"p\",\"completion\":\"4\"}\n");
    assert_holds(said, "reward    mean 1.0000");
    put("m.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"prompt\":\"<q>\",\"completion\":\"a\",\"n\":1}\n");
    run(0, "data/pick -i $T/m.jsonl --as sft");
    assert_string_equal(
        out, "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"prompt\":\"<q>\",\"completion\":\"a\"}\n");
    /* a test set by its messages, prompt or text */
    put("d.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"One two, three FOUR\"}]}\n{\"text\":\"five\"}\n");
    put("r.jsonl",
        "{\"prompt\":\"say one two three four five six\"}\n{\"prompt\":\"one two three\"}\n{\"text\":\"Five!\"}\n"
        "{\"prompt\":[{\"role\":\"user\",\"content\":\"two three four\"}]}\n");
    run(0, "data/pick -i $T/r.jsonl --decontaminate $T/d.jsonl --ngram 3");
    assert_string_equal(out, "");
    assert_holds(said, "no row was written");
    run(0, "data/pick -i $T/r.jsonl --decontaminate $T/d.jsonl --ngram 4");
    assert_int_equal(lines_of(out), 2);
    run(0, "data/pick -i $T/r.jsonl --decontaminate $T/d.jsonl --ngram 3 --overlap 0.8");
    assert_int_equal(lines_of(out), 2);
    run(0, "data/pick -i $T/r.jsonl --where 'has(prompt)' --near-field prompt --drop-near 0.6");
    assert_int_equal(lines_of(out), 2); /* 2*3/(7+3) is not above 0.6; three of three and three words are 0.67 */
}

static void bad_input(void **state) {
    (void)state;
    refused(2, "data/pick -i $T/samples.jsonl --where 'right and'", "--where: ends after");
    refused(1, "data/pick -i $T/samples.jsonl --where 'prompt > 1' -o $T/kept",
            "samples.jsonl: line 1: field 'prompt': is a string, which cannot be compared so with a number");
    refused(1, "data/pick -i $T/samples.jsonl --pairs reward", "has no chosen and rejected; give --group");
    refused(2, "data/pick -i $T/samples.jsonl --rankings reward", "--rankings: used only with --group");
    refused(2, "data/pick -i $T/samples.jsonl --group index --rankings reward --pairs reward", "give only one of them");
    refused(2, "data/pick -i $T/samples.jsonl --group index --rankings reward --all-pairs", "used only with --pairs");
    refused(2, "data/pick -i $T/samples.jsonl --min-margin 1", "or with --rankings");
    refused(1, "data/pick -i $T/samples.jsonl --group index --rankings prompt -o $T/kept", "expected a number");
    refused(1, "echo '{\"index\":0,\"reward\":1}' | data/pick -i - --group index --rankings reward -o $T/kept",
            "line 1: has no completion for --rankings");
    refused(1, "data/pick -i $T/samples.jsonl --as ranking -o $T/kept", "--as ranking: a row has no completions");
    refused(2, "data/pick -i $T/samples.jsonl --group index --best 2", "--best needs");
    refused(2, "data/pick -i $T/samples.jsonl --group index --rate 0.5", "expected LOW,HIGH");
    refused(2, "data/pick -i $T/samples.jsonl --group index --rate 0.9,0.5", "expected LOW,HIGH");
    refused(2, "data/pick -i $T/samples.jsonl --join $T/b.jsonl", "--join needs");
    refused(2, "data/pick -i $T/samples.jsonl --set a", "expected NAME=TEXT");
    refused(2, "data/pick -i $T/samples.jsonl --set 'a={b'", "a brace is neither");
    refused(2, "data/pick -i $T/samples.jsonl --ngram 4", "used only with --decontaminate");
    refused(2, "data/pick -i $T/samples.jsonl --seed 4", "--seed: used only with");
    refused(2, "data/pick -i $T/samples.jsonl --spin --unpaired", "give only one of them");
    refused(2, "data/pick -i $T/samples.jsonl -o $T/samples.jsonl", "both are");
    refused(1, "data/pick -i $T/samples.jsonl --group nothing -o $T/kept", "line 1: has no field 'nothing' (--group)");
    refused(1, "data/pick -i $T/samples.jsonl --group index --best 1 --by prompt -o $T/kept",
            "is a string, expected a number");
    refused(1, "data/pick -i $T/samples.jsonl --as unpaired -o $T/kept", "--as unpaired: a row has no label");
    refused(1, "data/pick -i $T/samples.jsonl --rename nothing=x -o $T/kept", "a row has no such field");
    refused(1, "data/pick -i $T/samples.jsonl --rename right=row -o $T/kept", "has the field row already");
    refused(1, "data/pick -i $T/samples.jsonl --shuffle --max-memory 10k -o $T/kept", "take more than 0 MB of memory");
    refused(1, "data/pick -i $T/none -o $T/kept", "none: cannot open");
    refused(1, "echo '{\"a\":1}' | data/pick -i - --dedupe b -o $T/kept", "has no field 'b' (--dedupe)");
    refused(2, "data/pick -i $T/samples.jsonl -i $T/samples.jsonl", "are the same file");
    refused(
        1,
        "printf '{\"index\":0}\\n{\"index\":0}\\n' >$T/.j; data/pick -i $T/samples.jsonl --join $T/.j --on index -o $T/kept",
        "an earlier line has the same value");
    refused(
        1,
        "printf '{\"row\":1,\"prompt\":1}\\n' >$T/.j; data/pick -i $T/samples.jsonl --join $T/.j --on row -o $T/kept",
        "field 'prompt': has another value in");
    refused(1, "echo '{\"a\":1}' | data/pick -i - > /dev/full", "standard output: cannot write");
    refused(1, "printf '{\"a\":1}\\n{\"a\"\\n' | data/pick -i - -o $T/kept", "standard input: line 2: is not JSON");
    run(0, "printf '{\"a\":1}\\n{\"a\"\\n{\"b\":true}\\n' | data/pick -i - --skip-bad --where 'a > 0'");
    assert_string_equal(out, "{\"a\":1}\n");
    assert_holds(said, "invalid lines skipped: 1 (first: standard input: line 2");
}

static int setup(void **state) {
    if (models_setup(state)) return 1;
    put_samples();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conditions_hold),
        cmocka_unit_test(conditions_refused),
        cmocka_unit_test(rouge_is_googles),
        cmocka_unit_test(near_misses_no_pair),
        cmocka_unit_test(contamination_is_overlap),
        cmocka_unit_test(scanned_members),
        cmocka_unit_test(lines_and_arrays),
        cmocka_unit_test(filters),
        cmocka_unit_test(random_choices),
        cmocka_unit_test(pairs),
        cmocka_unit_test(rankings),
        cmocka_unit_test(labels),
        cmocka_unit_test(judged_pairs),
        cmocka_unit_test(equations),
        cmocka_unit_test(fields),
        cmocka_unit_test(bad_input),
    };
    return cmocka_run_group_tests_name("pick", tests, setup, models_teardown);
}
