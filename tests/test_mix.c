/* test_mix.c - inputs.h, mix.h, mixing.h: shares against their formulas, the order of a mixture, its amounts, its length and
 * its state, and mixtures in all trainers. Needs the trainers, data/make_prefs, make_shard and make_tasks. */
#include "../llmc/base/error.h"       /* Error */
#include "../llmc/base/options.h"     /* OptionList */
#include "../llmc/records/clusters.h" /* clusters_find */
#include "../llmc/records/cursor.h"   /* Cursor, cursor_free, cursor_new, cursor_next, ... */
#include "../llmc/records/inputs.h"   /* inputs_close, Inputs, InputAmount, AMOUNT_PASSES, ... */
#include "../llmc/records/mix.h"      /* MixConfig, mix_free, Mix, mix_next, ... */
#include "../llmc/records/shard.h"    /* shard_close, shard_open, Shard, RECORD_CHAT, ... */
#include "files.h"                    /* files_path, text_of */
#include "letters.h"                  /* LETTERS, letters_setup */
#include "models.h"                   /* refused, json_number_of, json_line_of, lines_of, ... */
#include "run.h"                      /* sh, assert_resumes */
#include "shell.h"                    /* run, assert_holds, said, out, ... */

enum { MOST = 8 };

/* The files of a mixture, which need not exist. */
static Inputs inputs_of(int count, const InputAmount *amount) {
    static const char *const names[] = {"x/a.shard", "b.shard.zst", "y/a.bin", "d", "e", "f", "g", "h"};
    Inputs in = {0};
    for (int k = 0; k < count; k++) {
        inputs_add(&in, names[k]);
        if (amount) in.amount[k] = amount[k];
    }
    return in;
}

static Mix mix_of(Inputs *in, const int64_t *records, const MixConfig *how) {
    Error e;
    Mix m;
    if (!mix_new(&m, in, records, how, 7, &e)) fail_msg("%s", e.text);
    return m;
}

/* Without a mixture the order is that of one cursor over all records, whose state it keeps. */
static void plain_is_a_cursor(void **state) {
    (void)state;
    Error e;
    const int64_t records[] = {5, 9};
    Inputs in = inputs_of(2, NULL);
    Mix m = mix_of(&in, records, &(MixConfig){.plain = true}), again = mix_of(&in, records, &m.how);
    Cursor c = cursor_new(14, 7, 0);
    for (int i = 0; i < 50; i++) {
        json_t *one = json_object(), *two = json_object();
        assert_int_equal(mix_next(&m), cursor_next(&c));
        mix_save(&m, one), cursor_save(&c, two);
        assert_true(json_equal(one, two));
        assert_true(fabs(mix_epochs(&m) - (i + 1) / 14.0) < 1e-12);
        again.taken = 0;
        assert_true(mix_resume(&again, one, &e));
        assert_int_equal(again.taken, i + 1);
        json_decref(one), json_decref(two);
    }
    assert_true(mix_records(&m, 0.5) == 7);
    mix_free(&m), mix_free(&again), cursor_free(&c), inputs_close(&in);
}

static InputAmount weight(double w) { return (InputAmount){.kind = AMOUNT_WEIGHT, .value = w}; }

static void shares(void **state) {
    (void)state;
    const int64_t records[] = {100, 400, 10000};
    const double T = 1 / 0.3, root[] = {pow(100, 0.3), pow(400, 0.3), pow(3000, 0.3)};
    const double all = root[0] + root[1] + root[2];
    const InputAmount capped[] = {{0}, {0}, {.cap = 3000}}, weights[] = {weight(3), weight(0), weight(1)};
    const struct {
        MixConfig how;
        const InputAmount *amount;
        double share[3];
    } cases[] = {
        {{.mixing = MIX_WEIGHTS}, weights, {0.75, 0, 0.25}},
        {{.mixing = MIX_WEIGHTS}, NULL, {100 / 10500.0, 400 / 10500.0, 10000 / 10500.0}}, /* no weight: by records */
        {{.mixing = MIX_PROPORTIONAL}, capped, {100 / 3500.0, 400 / 3500.0, 3000 / 3500.0}},
        {{.mixing = MIX_TEMPERATURE, .temperature = T}, capped, {root[0] / all, root[1] / all, root[2] / all}},
        {{.mixing = MIX_TEMPERATURE, .temperature = 1}, NULL, {100 / 10500.0, 400 / 10500.0, 10000 / 10500.0}},
        {{.mixing = MIX_TEMPERATURE, .temperature = 1e6}, NULL, {1 / 3.0, 1 / 3.0, 1 / 3.0}},
        {{.mixing = MIX_EQUAL}, NULL, {1 / 3.0, 1 / 3.0, 1 / 3.0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Inputs in = inputs_of(3, cases[i].amount);
        Mix m = mix_of(&in, records, &cases[i].how);
        for (int k = 0; k < 3; k++) assert_true(fabs(m.file[k].share - cases[i].share[k]) < 2e-6);
        assert_int_equal(m.length, cases[i].amount == weights ? 10100 : 10500);
        mix_free(&m), inputs_close(&in);
    }
}

/* Draws n records and checks after each that every file has its share but for less than one record more, or `count` fewer;
 * that a file's records come without replacement; and that each of its epochs has another order. */
static void follows_its_shares(int count, const double *w, int n) {
    int64_t records[MOST], first[MOST + 1] = {0}, drawn[MOST] = {0};
    InputAmount amount[MOST];
    double sum = 0;
    for (int k = 0; k < count; k++) {
        records[k] = 3 + 5 * k;
        first[k + 1] = first[k] + records[k];
        amount[k] = weight(w[k]);
        sum += w[k];
    }
    Inputs in = inputs_of(count, amount);
    Mix m = mix_of(&in, records, &(MixConfig){0});
    int *seen = (int *)calloc((size_t)first[count], sizeof *seen);
    for (int i = 1; i <= n; i++) {
        const int64_t record = mix_next(&m);
        int k = 0;
        while (record >= first[k + 1]) k++;
        assert_int_equal(seen[record]++, drawn[k] / records[k]);
        drawn[k]++;
        for (int j = 0; j < count; j++) {
            const double ahead = (double)drawn[j] - w[j] / sum * i;
            if (!(ahead < 1 && ahead > -count)) fail_msg("after %d records file %d is ahead by %g", i, j, ahead);
            assert_true(mix_file_share(&m, j) == (double)drawn[j] / i);
            assert_true(mix_file_epochs(&m, j) == (double)drawn[j] / (double)records[j]);
        }
    }
    free(seen), mix_free(&m), inputs_close(&in);
}

static void largest_deficit(void **state) {
    (void)state;
    follows_its_shares(2, (const double[]){3, 1}, 1000);
    follows_its_shares(3, (const double[]){0.1, 0, 0.7}, 3000);
    follows_its_shares(5, (const double[]){1, 1, 1, 1, 1}, 1000);
    follows_its_shares(8, (const double[]){0.501, 0.32, 0.07, 0.05, 0.03, 0.017, 0.009, 0.003}, 5000);
    /* 3 to 1 by hand: deficits (3/4, 1/4) (1/2, 1/2) (1/4, 3/4) (1, 0) */
    const int64_t records[] = {4, 4};
    const InputAmount amount[] = {weight(3), weight(1)};
    Inputs in = inputs_of(2, amount);
    Mix m = mix_of(&in, records, &(MixConfig){0});
    for (int i = 0; i < 8; i++) assert_int_equal(mix_next(&m) / 4, i % 4 == 2);
    mix_free(&m), inputs_close(&in);
}

/* At random the counts are multinomial: within five standard deviations. */
static void at_random(void **state) {
    (void)state;
    const int64_t records[] = {50, 50, 50};
    const double p[] = {0.5, 0.3, 0.2};
    const InputAmount amount[] = {weight(5), weight(3), weight(2)};
    Inputs in = inputs_of(3, amount);
    Mix m = mix_of(&in, records, &(MixConfig){.random = true});
    int drawn[3] = {0}, even = 0;
    const int n = 20000;
    for (int i = 0; i < n; i++) {
        const int64_t k = mix_next(&m) / 50;
        drawn[k]++;
        even += fabs(drawn[0] - 0.5 * (i + 1)) < 1;
    }
    for (int k = 0; k < 3; k++) assert_true(fabs(drawn[k] - n * p[k]) < 5 * sqrt(n * p[k] * (1 - p[k])));
    assert_true(even < n / 2); /* the deterministic order always is */
    mix_free(&m), inputs_close(&in);
}

/* The number of times that a pass takes each record of a file, which must differ by one at most. */
static void amounts(void **state) {
    (void)state;
    const int64_t records[] = {10, 7};
    const struct {
        InputAmount amount;
        int64_t rows;
    } cases[] = {{{.kind = AMOUNT_PASSES, .value = 0.5}, 5},
                 {{.kind = AMOUNT_RECORDS, .value = 3}, 3},
                 {{.kind = AMOUNT_RECORDS, .value = 23}, 23},
                 {{.kind = AMOUNT_PASSES, .value = 2}, 20},
                 {{.kind = AMOUNT_PASSES, .value = 1}, 10}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const InputAmount amount[] = {cases[i].amount, {0}};
        Inputs in = inputs_of(2, amount);
        Mix m = mix_of(&in, records, &(MixConfig){0});
        assert_int_equal(m.length, cases[i].rows + 7);
        int first[17] = {0}, seen[17] = {0}, chosen = 0;
        for (int64_t n = 0; n < m.length; n++) first[mix_next(&m)]++;
        for (int64_t n = 0; n < m.length; n++) seen[mix_next(&m)]++;
        for (int r = 0; r < 17; r++) {
            assert_int_equal(first[r], seen[r]); /* each pass takes the same records */
            if (r < 10) assert_in_range(first[r], cases[i].rows / 10, (cases[i].rows + 9) / 10);
            else assert_int_equal(first[r], 1);
            chosen += r < 10 ? first[r] : 0;
        }
        assert_int_equal(chosen, cases[i].rows);
        mix_free(&m), inputs_close(&in);
    }
}

static void lengths(void **state) {
    (void)state;
    Error e;
    const int64_t records[] = {10, 100};
    Inputs in = inputs_of(2, NULL);
    Mix m = mix_of(&in, records, &(MixConfig){.mixing = MIX_EQUAL, .stop = MIX_FIRST});
    assert_int_equal(m.length, 19); /* a b a b ... a */
    mix_free(&m);
    m = mix_of(&in, records, &(MixConfig){.mixing = MIX_EQUAL, .stop = MIX_ALL});
    assert_int_equal(m.length, 200);
    const int64_t start = mix_next(&m); /* measuring leaves the mixture at its beginning */
    mix_rewind(&m);
    assert_int_equal(mix_next(&m), start);
    mix_free(&m);
    m = mix_of(&in, records, &(MixConfig){.mixing = MIX_EQUAL});
    assert_int_equal(m.length, 110);
    mix_free(&m);
    /* A random mixture ends with the draw that completes the first file, or the last. */
    for (int all = 0; all < 2; all++) {
        m = mix_of(&in, records, &(MixConfig){.mixing = MIX_EQUAL, .random = true, .stop = all ? MIX_ALL : MIX_FIRST});
        int64_t drawn[2] = {0}, n = 0;
        while (all ? drawn[0] < 10 || drawn[1] < 100 : drawn[0] < 10 && drawn[1] < 100) {
            drawn[mix_next(&m) >= 10]++;
            n++;
        }
        assert_int_equal(m.length, n);
        mix_free(&m);
    }
    inputs_close(&in);
    /* A file leaves after its epochs, and the others share its part: 10 and 10 of the first 20, then all of the second. */
    const InputAmount once[] = {{.epochs = 1}, {0}}, both[] = {{.epochs = 0.5}, {.epochs = 0.2}};
    in = inputs_of(2, once);
    m = mix_of(&in, records, &(MixConfig){.mixing = MIX_EQUAL, .stop = MIX_ALL});
    assert_int_equal(m.length, 110);
    for (int i = 0; i < 300; i++) assert_int_equal(mix_next(&m) < 10, i < 20 && i % 2 == 0);
    mix_free(&m), inputs_close(&in);
    in = inputs_of(2, both);
    m = mix_of(&in, records, &(MixConfig){.mixing = MIX_EQUAL});
    assert_int_equal(m.limit, 25);
    assert_true(mix_records(&m, 3) == 25 && mix_records(&m, 0.1) == 11);
    int64_t drawn[2] = {0};
    for (int i = 0; i < 25; i++) drawn[mix_next(&m) >= 10]++;
    assert_true(drawn[0] == 5 && drawn[1] == 20);
    mix_free(&m), inputs_close(&in);
    const InputAmount rare[] = {weight(1e-12), weight(1)};
    in = inputs_of(2, rare);
    assert_false(mix_new(&m, &in, records, &(MixConfig){.stop = MIX_ALL}, 7, &e));
    assert_holds(e.text, "small share");
    inputs_close(&in);
}

/* From every position, through a state as text, a mixture goes on as if it had not stopped. */
static void states(void **state) {
    (void)state;
    Error e;
    const int64_t records[] = {5, 9, 4};
    const InputAmount amount[] = {{.kind = AMOUNT_PASSES, .value = 1.4, .epochs = 2}, {0}, {.epochs = 1.5}};
    for (int random = 0; random < 2; random++) {
        Inputs in = inputs_of(3, amount);
        const MixConfig how = {.mixing = MIX_TEMPERATURE, .temperature = 3, .random = random};
        Mix m = mix_of(&in, records, &how);
        int64_t order[80];
        char *text[40];
        for (int i = 0; i < 80; i++) {
            order[i] = mix_next(&m);
            json_t *s = json_object();
            mix_save(&m, s);
            if (i < 40) text[i] = json_dumps(s, JSON_REAL_PRECISION(17));
            json_decref(s);
        }
        for (int i = 0; i < 40; i++) {
            json_t *s = json_loads(text[i], 0, NULL);
            Mix again = mix_of(&in, records, &how);
            if (!mix_resume(&again, s, &e)) fail_msg("%s", e.text);
            for (int k = i + 1; k < 80; k++) assert_int_equal(mix_next(&again), order[k]);
            mix_free(&again), json_decref(s);
        }
        json_t *s = json_loads(text[7], 0, NULL);
        Mix other = mix_of(&in, records, &(MixConfig){.mixing = MIX_EQUAL});
        assert_false(mix_resume(&other, s, &e));
        mix_free(&other);
        other = mix_of(&in, records, &(MixConfig){.plain = true});
        assert_false(mix_resume(&other, s, &e));
        mix_free(&other), json_decref(s), mix_free(&m), inputs_close(&in);
        for (int i = 0; i < 40; i++) free(text[i]);
    }
}

static void names(void **state) {
    (void)state;
    const int64_t records[] = {5, 9, 4, 2, 3};
    Inputs in = inputs_of(4, NULL);
    inputs_add(&in, "z/a.v2.shard");
    Mix m = mix_of(&in, records, &(MixConfig){0});
    assert_string_equal(m.file[0].name, "x/a.shard"); /* the third and the fifth would have the same */
    assert_string_equal(m.file[1].name, "b");
    assert_string_equal(m.file[2].name, "y/a.bin");
    assert_string_equal(m.file[3].name, "d");
    assert_string_equal(m.file[4].name, "z/a.v2.shard");
    mix_free(&m), inputs_close(&in);
}

static Inputs open_one(const char *value) {
    Error e;
    Inputs in;
    const char *items[] = {value};
    if (!inputs_open(&in, "-i", &(OptionList){items, 1}, &e)) fail_msg("%s", e.text);
    return in;
}

static void names_with_amounts(void **state) {
    (void)state;
    char value[512];
    put("odd:3", "x"), put("plain", "x"), put("many.1", "x"), put("many.2", "x");
    snprintf(value, sizeof value, "%s", files_path("odd:3"));
    Inputs in = open_one(value); /* a file of exactly that name */
    assert_true(in.count == 1 && in.amount[0].kind == AMOUNT_NONE && !strcmp(in.path[0], value));
    inputs_close(&in);
    strcat(value, ":0.5x");
    in = open_one(value);
    assert_true(in.amount[0].kind == AMOUNT_PASSES && in.amount[0].value == 0.5);
    assert_string_equal(in.path[0], files_path("odd:3"));
    inputs_close(&in);
    snprintf(value, sizeof value, "%s", files_path("many.*:2000n"));
    in = open_one(value);
    assert_int_equal(in.count, 2);
    for (int k = 0; k < 2; k++) assert_true(in.amount[k].kind == AMOUNT_RECORDS && in.amount[k].value == 2000);
    inputs_close(&in);
    in = open_one("http://none"); /* no amount: a name */
    assert_string_equal(in.path[0], "http://none");
    inputs_close(&in);
}

#define SFT  "./train_sft --layers 1 --width 32 --heads 2 --context 48 "
#define MADE " -o $T/kept"

static void bad_input(void **state) {
    (void)state;
    refused(2, "./data/make_shard -i $T/list -i $T/list -o $T/kept", "are the same file");
    sh("head -c 100 $T/list >$T/cut; printf \"# nothing\\n\" >$T/empty.list; printf \"$T/chat.shard 1 x\\n\" >$T/cap.list");
    sh("printf \"$T/chat.shard 1\\n$T/more.shard 2 - - 4\\n\" >$T/five.list; printf \"$T/chat.shard much\\n\" >$T/word.list");
    sh("printf \"$T/chat.shard 1 - -1\\n\" >$T/epochs.list; printf \"$T/chat.shard 3 10\\n$T/more.shard\\n\" >$T/used.list");
    sh("printf \"$T/chat.shard - - 1\\n\" >$T/one.list");
    refused(2, SFT "-i $T/chat.shard:-1 -i $T/more.shard" MADE,
            "chat.shard:-1: a weight must be a number of at least 0");
    refused(2, SFT "-i $T/chat.shard:nan -i $T/more.shard" MADE, "a weight must be");
    refused(2, SFT "-i $T/chat.shard:inf -i $T/more.shard" MADE, "a weight must be");
    refused(2, SFT "-i $T/chat.shard:0 -i $T/more.shard:0" MADE, "the weights of all files are 0");
    refused(2, SFT "-i $T/chat.shard:0x -i $T/more.shard" MADE, "passes must be");
    refused(2, SFT "-i $T/chat.shard:1.5n -i $T/more.shard" MADE, "a number of records must be");
    refused(2, SFT "-i $T/chat.shard:much" MADE, "'much' is no amount");
    refused(1, SFT "-i $T/chat.shard:0.001x" MADE, "of its 120 records is none");
    refused(2, SFT "-i $T/chat.shard:1 -i $T/chat.shard:2" MADE, "are the same file");
    refused(2, SFT "-i $T/chat.shard --mix $T/list" MADE, "are the same file");
    refused(1, SFT "-i $T/chat.shard:2 -i $T/prefs.shard:1" MADE, "prefs.shard");
    refused(1, SFT "-i $T/chat.shard:2 -i $T/none.shard:1" MADE, "none.shard: cannot open: No such file");
    refused(1, SFT "-i $T/chat.shard:2 -i $T/other.shard:1" MADE, "other.shard");
    refused(1, SFT "-i $T/chat.shard:2 -i $T/empty.shard" MADE, "empty.shard: the shard is empty");
    refused(2, SFT "-i $T/chat.shard -j $T/more.shard:2" MADE, "for training data only");
    refused(2, SFT "--mix $T/no.list" MADE, "no.list: cannot open: No such file");
    refused(2, SFT "--mix $T/empty.list" MADE, "empty.list: it names no file");
    refused(2, SFT "--mix $T/cap.list" MADE, "cap.list:1: the cap is 'x'");
    refused(2, SFT "--mix $T/five.list" MADE, "five.list:2 has more than four fields");
    refused(2, SFT "--mix $T/word.list" MADE, "word.list:1: 'much' is no amount");
    refused(2, SFT "--mix $T/epochs.list" MADE, "epochs.list:1: the epochs are '-1'");
    refused(2, SFT "--mix $T/used.list" MADE, "does not use the cap 10");
    refused(1, SFT "--mix $T/one.list -x 1000" MADE, "--max-steps: the run would take more than the 120 records");
    refused(2, SFT "-i $T/chat.shard:3 -i $T/more.shard --mixing equal" MADE, "does not use the weight 3");
    refused(2, SFT "-i $T/chat.shard --mixing equal" MADE, "there is only one file");
    refused(2, SFT "-i $T/chat.shard --stopping-strategy all_exhausted" MADE, "there is only one file");
    refused(2, SFT "-i $T/chat.shard -i $T/more.shard --mixing-temperature 2" MADE, "--mixing-temperature: used only");
    refused(2, SFT "-i $T/chat.shard:1 -i $T/more.shard -x 3 --stopping-strategy first_exhausted" MADE,
            "--stopping-strategy: --max-steps sets the length");
    refused(2, SFT "--mix $T/list -o $T/more.shard --quiet", "more.shard");
}

/* How often record i, of the rows "i", is in the shard "mixed.shard"; the number of its records. */
static int64_t mixed_rows(int *times, int rows) {
    Error e;
    Shard s;
    Record r = {0};
    if (!shard_open(&s, files_path("mixed.shard"), &e)) fail_msg("%s", e.text);
    memset(times, 0, (size_t)rows * sizeof *times);
    int64_t tokens = 0;
    for (int64_t i = 0; i < s.count; i++) {
        assert_true(shard_record(&s, i, &r, &e));
        const int row = atoi(r.text);
        assert_in_range(row, 0, rows - 1);
        times[row]++;
        tokens += r.count;
    }
    assert_int_equal(tokens, s.total_tokens);
    const int64_t count = s.count;
    record_free(&r), shard_close(&s);
    return count;
}

/* The smallest and the largest of times[from .. to-1], as "smallest-largest", and whether their sum is as expected. */
static void assert_times(const int *times, int from, int to, int least, int most, int sum) {
    for (int i = from; i < to; i++) {
        assert_in_range(times[i], least, most);
        sum -= times[i];
    }
    assert_int_equal(sum, 0);
}

/* make_shard takes of each file what its amount says: rows 0-29 are in a, 30-39 in b. */
static void make_shard_mixes(void **state) {
    (void)state;
    int times[40];
    char first[32], again[32];
    sh("for i in $(seq 0 29); do echo \"{\\\"prompt\\\":\\\"$i\\\",\\\"answer\\\":\\\"1\\\"}\"; done >$T/ra.jsonl");
    sh("for i in $(seq 30 39); do echo \"{\\\"prompt\\\":\\\"$i\\\",\\\"answer\\\":\\\"1\\\"}\"; done >$T/rb.jsonl");
#define MIXED "./data/make_shard --task numeric -o $T/mixed.shard "
    run(0, MIXED "-i $T/ra.jsonl:1 -i $T/rb.jsonl:1"); /* ends with the last record of b */
    assert_holds(said, "mixture: 10 of the 30 records of ");
    assert_in_range(mixed_rows(times, 40), 19, 20);
    assert_times(times, 30, 40, 1, 1, 10);
    assert_times(times, 0, 30, 0, 1, (int)mixed_rows(times, 40) - 10);
    run(0, MIXED "-i $T/ra.jsonl:0.5x -i $T/rb.jsonl:25n");
    assert_int_equal(mixed_rows(times, 40), 40);
    assert_times(times, 0, 30, 0, 1, 15);
    assert_times(times, 30, 40, 2, 3, 25);
    run(0, MIXED "-i $T/ra.jsonl:3 -i $T/rb.jsonl:1 --limit 100 --seed 5");
    assert_int_equal(mixed_rows(times, 40), 100);
    assert_times(times, 0, 30, 2, 3, 75);
    assert_times(times, 30, 40, 2, 3, 25);
    run(0, "md5sum <$T/mixed.shard"), snprintf(first, sizeof first, "%.31s", out);
    run(0, MIXED "-i $T/ra.jsonl:3 -i $T/rb.jsonl:1 --limit 100 --seed 5 -q && md5sum <$T/mixed.shard");
    snprintf(again, sizeof again, "%.31s", out);
    assert_string_equal(first, again);
    run(0, MIXED "-i $T/ra.jsonl:3 -i $T/rb.jsonl:1 --limit 100 --seed 6 -q && md5sum <$T/mixed.shard");
    snprintf(again, sizeof again, "%.31s", out);
    assert_string_not_equal(first, again);
    run(0, MIXED "-i $T/ra.jsonl -i $T/rb.jsonl --mixing equal --stopping-strategy all_exhausted");
    assert_in_range(mixed_rows(times, 40), 59, 60);
    assert_times(times, 0, 30, 1, 1, 30);
    run(0, MIXED "-i $T/ra.jsonl:1 -i $T/rb.jsonl:1 --val-output $T/held.shard --val-fraction 0.5");
    const int64_t n = mixed_rows(times, 40);
    assert_times(times, 0, 40, 0, 1, (int)n);
    sh("printf \"$T/ra.jsonl 1 - 2\\n$T/rb.jsonl 1 - 2\\n\" >$T/twice.list; echo words >$T/words.txt");
    run(0, MIXED "--mix $T/twice.list --limit 80");
    mixed_rows(times, 40);
    assert_times(times, 0, 40, 2, 2, 80);
    refused(1, MIXED "--mix $T/twice.list --limit 81", "the epochs in the list of --mix allow 80 records");
    refused(1, MIXED "-i $T/ra.jsonl:1 -i $T/rb.jsonl:0.01x", "of its 10 records is none");
    refused(2, MIXED "-i $T/ra.jsonl:0 -i $T/rb.jsonl:0", "the weights of all files are 0");
    refused(2, MIXED "-i $T/ra.jsonl --mixing equal", "there is only one file");
    refused(2, MIXED "-i $T/ra.jsonl:1 -i $T/rb.jsonl:1 --limit 5 --stopping-strategy all_exhausted", "--limit sets");
    refused(2, MIXED "-i $T/ra.jsonl -i $T/rb.jsonl --seed 2", "--seed: used only with");
    refused(1, "./data/make_shard -o $T/mixed.shard -i $T/words.txt:2", "a token shard is not made as a mixture");
}

/* --hold-out: no record of the cluster is trained on, and evaluate knows that from the model's lineage. */
static void held_out(void **state) {
    (void)state;
    Error e;
    Shard s;
    sh("for i in $(seq 0 39); do c=$(echo sums lists puzzles puzzles | cut -d' ' -f$((i %% 4 + 1))); "
       "echo \"{\\\"prompt\\\":\\\"$i:\\\",\\\"answer\\\":\\\"$i\\\",\\\"cluster\\\":\\\"$c\\\"}\"; done >$T/c.jsonl");
    sh("sed 's/\"answer\"/\"completion\"/' $T/c.jsonl >$T/cs.jsonl");
#define HELD "./data/make_shard --hold-out cluster=puzzles --val-output $T/held.shard "
    run(0, HELD "-i $T/cs.jsonl -o $T/mixed.shard");
    assert_true(shard_open(&s, files_path("mixed.shard"), &e));
    assert_int_equal(s.count, 20);
    assert_int_equal(clusters_find(s.clusters, "puzzles"), -1);
    assert_int_equal(json_array_size(json_object_get(s.clusters, "clusters")), 2);
    shard_close(&s);
    assert_true(shard_open(&s, files_path("held.shard"), &e));
    assert_int_equal(s.count, 20);
    assert_int_equal(clusters_find(s.clusters, "puzzles"), 0);
    shard_close(&s);
    run(0, "data/show $T/mixed.shard"), assert_holds(out, "clusters (field cluster): sums, lists\n");
    sh("./data/make_shard -i $T/c.jsonl -o $T/all.shard --task numeric -q");
    sh("./train_sft --layers 1 --heads 1 --width 8 --context 32 -i $T/mixed.shard -x 2 -o $T/told.bin -q");
    run(0, "./evaluate -c $T/told.bin -i $T/all.shard --num-samples 0 --max-new-tokens 4");
    assert_holds(said, "cluster puzzles, not seen in training: 20 prompts");
    assert_holds(said, "cluster sums, seen in training: 10 prompts");
    json_t *result = json_loads(out, 0, NULL), *all = json_object_get(result, "clusters");
    assert_true(json_is_false(json_object_get(json_object_get(all, "puzzles"), "seen")));
    assert_true(json_is_true(json_object_get(json_object_get(all, "lists"), "seen")));
    json_decref(result);
    sh("./train_sft -c $T/told.bin -i $T/chat.shard -x 1 -o $T/untold.bin -q"); /* data that does not say */
    run(0, "./evaluate -c $T/untold.bin -i $T/all.shard --num-samples 0 --max-new-tokens 4");
    assert_holds(said, "cluster puzzles, its training does not say whether it has seen them: 20 prompts");
    assert_holds(said, "cluster sums, seen in training: 10 prompts");
    run(0, HELD "-i $T/cs.jsonl -o $T/mixed.shard --hold-out cluster=lists --val-fraction 0.5");
    assert_true(shard_open(&s, files_path("mixed.shard"), &e));
    assert_true(s.count < 10 && clusters_find(s.clusters, "lists") == -1);
    shard_close(&s);
    refused(1, HELD "-i $T/cs.jsonl -o $T/kept --hold-out cluster=riddles",
            "cluster=riddles: no record is of this cluster");
    refused(2, HELD "-i $T/cs.jsonl -o $T/kept --hold-out task=sums", "the field of the clusters is already 'cluster'");
    refused(2, HELD "-i $T/cs.jsonl -o $T/kept --hold-out puzzles", "is not FIELD=NAME");
    refused(2, "./data/make_shard -i $T/cs.jsonl -o $T/kept --hold-out cluster=sums",
            "--hold-out requires --val-output");
}

/* The metrics of the last step in a file. The result must be freed. */
static json_t *last_step(const char *name) {
    char *text = text_of(files_path(name));
    json_t *row = NULL, *last = NULL;
    for (int n = 0; n < lines_of(text); n++) {
        row = json_line_of(text, n);
        if (json_object_get(row, "mix/a/share")) {
            json_decref(last);
            last = json_incref(row);
        }
        json_decref(row);
    }
    free(text);
    assert_non_null(last);
    return last;
}

/* A run with a mixture resumes, and the shares and epochs in its metrics are those of the mixture. */
static void resumes(const char *command, int steps) {
    assert_resumes(command, steps, "bin");
    for (int part = 0; part < 2; part++) {
        json_t *row = last_step(part ? "parts.jsonl" : "whole.jsonl");
        const double a = json_number_of(row, "mix/a/share"), b = json_number_of(row, "mix/b/share");
        const double ratio = json_number_of(row, "mix/a/epoch") / json_number_of(row, "mix/b/epoch");
        assert_true(fabs(a + b - 1) < 1e-12 && fabs(a - 0.75) < 0.1);
        assert_true(fabs(ratio - a / b * 40 / 80) < 1e-9); /* b has 40 records and a has 80 */
        json_decref(row);
    }
}

static void trainers(void **state) {
    (void)state;
    sh(SFT "-i $T/chat.shard -x 2 -o $T/base.bin && ./train_rm -c $T/base.bin -i $T/prefs.shard -x 2 -o $T/rm.bin");
    resumes("./train_sft -c $T/base.bin -i $T/chat/a.shard:3 -i $T/chat/b.shard:1 --batch-tokens 200 -l 1e-2", 12);
    resumes("./train_rm -c $T/base.bin -i $T/prefs/a.shard:3 -i $T/prefs/b.shard -l 1e-2", 6);
    resumes("./train_dpo -c $T/base.bin -i $T/prefs/a.shard:3 -i $T/prefs/b.shard -l 1e-2", 6);
    resumes("./train_dpo -c $T/base.bin -i $T/prefs/a.shard:3 -i $T/prefs/b.shard -l 1e-2 --loss-type kto --mix-random",
            24);
    resumes(
        "./train_dpo -c $T/base.bin --online --reward-model $T/rm.bin -i $T/prompts/a.shard:3 -i $T/prompts/b.shard "
        "--max-completion-length 4 -l 1e-2",
        6);
    resumes("./train_grpo -c $T/base.bin -i $T/tasks/a.shard:3 -i $T/tasks/b.shard -g 4 -p 4 -G 4 -l 1e-2", 6);
    resumes("./train_ppo -c $T/base.bin --mix $T/prompts.list --reward-model $T/rm.bin -g 4 -p 8 -l 1e-2", 16);
    /* Other weights are not the run's. */
    sh("./train_sft -c $T/base.bin -i $T/chat/a.shard:3 -i $T/chat/b.shard:1 -x 4 -o $T/whole.bin --state $T/run.state "
       "--save-steps 2");
    refused(1,
            "./train_sft -c $T/base.bin -i $T/chat/a.shard:2 -i $T/chat/b.shard:1 -x 4 --resume $T/run.state -q" MADE,
            "another mixture of data");
    refused(1, "./train_sft -c $T/base.bin -i $T/chat/a.shard -i $T/chat/b.shard -x 4 --resume $T/run.state -q" MADE,
            "a mixture of data, which this run has not");
    /* More steps than the epochs in the list allow: before the options are shown, and before anything is computed. */
#define BEYOND "-c $T/base.bin -x 3" MADE
    refused(1, "./train_dpo --mix $T/prefs.list -d 60 --precompute-ref-log-probs " BEYOND, "more than the 120 records");
    refused(1, "./train_dpo --online --mix $T/few.list -d 60 --reward-model $T/rm.bin -g 1 " BEYOND,
            "more than the 120 records");
}

/* The length of a run, from its first line about the mixture and its last step. */
static void run_lengths(void **state) {
    (void)state;
    run(0, SFT "-i $T/chat/a.shard:0.5x -i $T/chat/b.shard --num-train-epochs 2 -o $T/x.bin --metrics $T/m.jsonl");
    json_t *row = last_step("m.jsonl");
    assert_true(json_number_of(row, "mix/a/epoch") == 1 &&
                json_number_of(row, "mix/b/epoch") == 2); /* 40 of 80, twice */
    assert_true(json_number_of(row, "epoch") == 2);
    json_decref(row);
    run(0, SFT "-i $T/chat/a.shard -i $T/chat/b.shard --mixing equal --stopping-strategy first_exhausted "
               "--num-train-epochs 1 -o $T/x.bin --metrics $T/m.jsonl");
    row = last_step("m.jsonl");
    /* a b a b ... b: b's fortieth record is the eightieth of all */
    assert_true(json_number_of(row, "mix/b/epoch") == 1 && json_number_of(row, "mix/a/epoch") == 0.5);
    json_decref(row);
    /* No answer of this model is right, so every group is replaced, and 2 x 60 prompts are not enough. */
#define ONCE "./train_grpo -c $T/base.bin --mix $T/once.list -g 1 -p 60 -G 2 -x 2 -o $T/x.bin "
    run(0, ONCE "--dynamic-sampling");
    assert_holds(said, "more than the 120 records were drawn that the epochs in the list of --mix allow");
    run(0, ONCE);
    assert_null(strstr(said, "records were drawn"));
}

/* make_shard names 64 fields that it does not read, and counts the others: 70 of one row, then 3 of another. */
static void unread_fields(void **state) {
    (void)state;
    char text[4000] = "{\"prompt\":\"a\",\"completion\":\"b\"";
    for (int i = 0; i < 70; i++) sprintf(text + strlen(text), ",\"k%d\":1", i);
    strcat(text, "}\n{\"prompt\":\"a\",\"completion\":\"b\",\"k1\":1,\"k101\":1,\"k102\":1}\n");
    put("many.jsonl", text);
    run(0, "./data/make_shard -q -i $T/many.jsonl -o $T/many.shard");
    assert_holds(said, "field 'k1', which is not read: 2");
    assert_holds(said, "occurrences of further fields, which are not read: 8");
}

static int setup(void **state) {
    if (letters_setup(state)) return 1;
    sh("mkdir $T/chat $T/prefs $T/prompts $T/tasks");
    for (int k = 0; k < 2; k++) {
        const char name = (char)('a' + k);
        const int count = k ? 40 : 80;
        sh(LETTERS "--seed %d --count %d --format chat | ./data/make_shard -q -i - -o $T/chat/%c.shard", k + 2, count,
           name);
        sh(LETTERS "--seed %d --count %d | ./data/make_shard -q -i - -o $T/prefs/%c.shard", k + 2, count, name);
        sh(LETTERS "--seed %d --count %d --format prompt | ./data/make_shard -q -i - -o $T/prompts/%c.shard", k + 2,
           count, name);
        sh("./data/make_tasks --task add --digits 1 --count %d --seed %d --split all -o $T/tasks/%c.shard", count, k,
           name);
    }
    sh("cp $T/chat/a.shard $T/more.shard; printf \"$T/chat.shard\\n$T/more.shard\\n\" >$T/list");
    sh("printf \"# shards\\n\\n$T/prompts/a.shard 3\\n$T/prompts/b.shard\\t1 - 100\\n\" >$T/prompts.list");
    sh("printf \"$T/prefs.shard - - 1\n\" >$T/prefs.list; printf \"$T/prompts/a.shard - - 1\n$T/prompts/b.shard - - 1\n\" "
       ">$T/few.list");
    sh("printf \"$T/tasks/a.shard 1 - 1\\n$T/tasks/b.shard 1 - 1\\n\" >$T/once.list");
    sh(LETTERS "--seed 9 --count 9 --format chat | ./data/make_shard -q --template llama -i - -o $T/other.shard");
    Error e;
    ShardWriter w;
    Shard chat;
    if (!shard_open(&chat, files_path("chat.shard"), &e) ||
        !shard_create(&w, files_path("empty.shard"), RECORD_CHAT, chat.vocab, chat.tokenizer, chat.tokenizer_bytes,
                      chat.chat_template, &e) ||
        !shard_commit(&w, &e))
        return 1;
    shard_close(&chat);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_is_a_cursor),
        cmocka_unit_test(shares),
        cmocka_unit_test(largest_deficit),
        cmocka_unit_test(at_random),
        cmocka_unit_test(amounts),
        cmocka_unit_test(lengths),
        cmocka_unit_test(states),
        cmocka_unit_test(names),
        cmocka_unit_test(names_with_amounts),
        cmocka_unit_test(bad_input),
        cmocka_unit_test(make_shard_mixes),
        cmocka_unit_test(held_out),
        cmocka_unit_test(unread_fields),
        cmocka_unit_test(trainers),
        cmocka_unit_test(run_lengths),
    };
    return cmocka_run_group_tests(tests, setup, models_teardown);
}
