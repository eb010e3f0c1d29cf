/* test_rollouts.c - files of rollouts: what is written, read back, cut off, refused or continued; the histogram of a
 * clip with the loss that clips; train_grpo with --rollouts, and data/show. Needs the trainers and data/. */
#include "../llmc/base/error.h"               /* Error */
#include "../llmc/base/options.h"             /* option_choice_name */
#include "../llmc/loss/advantage.h"           /* advantage_group, AdvantageStats, SCALE_GROUP, SCALE_NONE, ... */
#include "../llmc/loss/clip_histogram.h"      /* CLIP_BINS, CLIP_ROWS, ClipHistogram, clip_histogram, ... */
#include "../llmc/loss/policy.h"              /* policy_loss_config, POLICY_CISPO, POLICY_GMPO, POLICY_GRPO, ... */
#include "../llmc/loss/preference.h"          /* PREFERENCE_EXO_PAIR, PreferenceLoss, PREFERENCE_APO_DOWN, ... */
#include "../llmc/model/batch.h"              /* Batch */
#include "../llmc/model/model.h"              /* Model, model_free */
#include "../llmc/model/pack.h"               /* batch_clear, batch_free, batch_new, batch_segment, ... */
#include "../llmc/model/transformer.h"        /* ModelOutput, model_forward */
#include "../llmc/model/workspace.h"          /* Workspace, workspace_free, workspace_new */
#include "../llmc/report/history.h"           /* History, history_free, history_pair, history_line, ... */
#include "../llmc/report/report.h"            /* report_page */
#include "../llmc/report/report_pairs.h"      /* pair_has_reference */
#include "../llmc/report/report_rollouts.h"   /* ROLLOUTS_GROUPS, RolloutTilt, rollout_tilt */
#include "../llmc/report/rollouts.h"          /* Rollouts, rollouts_free, rollouts_read, RolloutLog, ... */
#include "../llmc/rollout/rollout.h"          /* RolloutRequest, Completion, Rollout, Sampling, ... */
#include "../llmc/train/generation.h"         /* Generation */
#include "../llmc/train/generation_options.h" /* GenerationOptions */
#include "../llmc/train/rollout_dump.h"       /* rollout_dump_steps, RolloutDump, rollout_dump_decode */
#include "files.h"                            /* files_path, files_put, files_assert_error, occurrences, ... */
#include "letters.h"                          /* letters_setup */
#include "models.h"                           /* refused, models_new, models_teardown */
#include "page.h"                             /* assert_page */
#include "run.h"                              /* sh, assert_same_file, metric */
#include "shell.h"                            /* assert_holds, said */

/* ---- the file ---- */

static json_t *texts_of(const char *const *tokens, int n) {
    RolloutTexts t = rollout_texts();
    for (int i = 0; i < n; i++) rollout_texts_add(&t, tokens[i], strlen(tokens[i]), i + 1 == n);
    return rollout_texts_end(&t);
}

/* A character of several tokens is in the last of them; bytes that belong to none become U+FFFD. */
static void test_texts(void **state) {
    (void)state;
    static const struct {
        const char *tokens[5];
        int n;
        const char *expected;
    } table[] = {{{"2", " 3"}, 2, "[\"2\",\" 3\"]"},
                 {{"a\xE2", "\x82", "\xAC!"}, 3, "[\"a\",\"\",\"\xE2\x82\xAC!\"]"},
                 {{"\xF0\x9F", "\x98\x80"}, 2, "[\"\",\"\xF0\x9F\x98\x80\"]"},
                 {{"\xE2", "x"}, 2, "[\"\",\"\xEF\xBF\xBDx\"]"},
                 {{"x", "\xE2\x82"}, 2, "[\"x\",\"\xEF\xBF\xBD\xEF\xBF\xBD\"]"},
                 {{"\xFF", "b"}, 2, "[\"\xEF\xBF\xBD\",\"b\"]"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        json_t *texts = texts_of(table[i].tokens, table[i].n);
        char *text = json_dumps(texts, JSON_COMPACT);
        assert_string_equal(text, table[i].expected);
        free(text), json_decref(texts);
    }
}

#define SAMPLE "{\"text\":\"2 3\",\"tokens\":[\"2\",\" 3\"],\"logp\":[-0.5,null],\"advantage\":0.5,\"reward\":1.0}"
#define GROUP  "{\"step\":%d,\"kind\":\"fixed\",\"prompt_id\":7,\"prompt\":\"1+\",\"samples\":[" SAMPLE "]}"

static json_t *group_of(int step) {
    char text[400];
    snprintf(text, sizeof text, GROUP, step);
    json_t *group = json_loads(text, 0, NULL);
    assert_non_null(group);
    return group;
}

static void put_steps(const char *path, const char *run, int64_t resume, int from, int to) {
    RolloutLog log;
    Error e = {""};
    if (!rollouts_open(&log, path, run, "train_grpo", resume, &e)) fail_msg("%s", e.text);
    for (int step = from; step <= to; step++) rollouts_add(&log, group_of(step));
    assert_string_equal(log.failed.text, "");
    rollouts_close(&log);
}

static void assert_steps(const char *path, int last, bool cut) {
    Rollouts r;
    Error e = {""};
    if (!rollouts_read(&r, path, &e)) fail_msg("%s", e.text);
    assert_int_equal(r.count, last);
    assert_string_equal(r.run, "aa");
    assert_string_equal(r.program, "train_grpo");
    assert_int_equal(r.cut, cut);
    for (int i = 0; i < last; i++) {
        char expected[400];
        snprintf(expected, sizeof expected, GROUP, i + 1);
        assert_string_equal(r.lines[i].text, expected);
        assert_int_equal(r.lines[i].step, i + 1);
        assert_true(r.lines[i].fixed && !r.lines[i].clip);
    }
    rollouts_free(&r);
}

/* Written in one part, or in two of which the second drops what is after its step; the same for compressed files. */
static void test_resume(void **state) {
    (void)state;
    static const char *const names[] = {"r.jsonl", "r.jsonl.zst"};
    for (int i = 0; i < 2; i++) {
        const char *path = files_path(names[i]);
        Error e = {""};
        RolloutLog log;
        put_steps(path, "aa", -1, 1, 5);
        assert_steps(path, 5, false);
        put_steps(path, "aa", 3, 4, 9);
        assert_steps(path, 9, false);
        assert_false(rollouts_open(&log, path, "bb", "train_grpo", 3, &e));
        files_assert_error(&e, "it holds the rollouts of another run");
        assert_steps(path, 9, false);
        put_steps(path, "aa", -1, 1, 2); /* a new run, over the old file */
        assert_steps(path, 2, false);
    }
}

/* A file that a kill cut at any byte is read up to its last whole line, and continued there. */
static void test_cut(void **state) {
    (void)state;
    static const char *const names[] = {"c.jsonl", "c.jsonl.zst"};
    for (int i = 0; i < 2; i++) {
        const char *path = files_path(names[i]), *copy = files_path(i ? "copy.zst" : "copy");
        size_t n;
        put_steps(path, "aa", -1, 1, 3);
        uint8_t *data = files_get(path, &n);
        for (size_t cut = 1; cut < n; cut++) {
            Rollouts r;
            Error e = {""};
            files_put(copy, data, cut);
            if (rollouts_read(&r, copy, &e)) {
                assert_true(r.count <= 3);
                rollouts_free(&r);
            } else if (!strstr(e.text, "the file has no rollouts")) fail_msg("%zu: %s", cut, e.text);
            if (cut % 7) continue;
            put_steps(copy, "aa", 1, 2, 3); /* at least the head or nothing is left: a resumed run goes on */
        }
        files_put(copy, data, n - 2);
        put_steps(copy, "aa", 2, 3, 4);
        assert_steps(copy, 4, false);
        free(data);
    }
}

static void test_refused(void **state) {
    (void)state;
    static const struct {
        const char *line, *why;
    } table[] = {
        {"{\"step\":1}", "line 2: a group without a \"prompt_id\""},
        {"{\"prompt_id\":1}", "line 2: a line without an integer \"step\""},
        {"nonsense", "line 2: not JSON"},
        {"{\"step\":NaN}", "line 2: not JSON"},
        {"{\"step\":1,\"prompt_id\":1,\"prompt\":\"\",\"samples\":[]}", "line 2: a group without \"samples\""},
        {"{\"step\":1,\"prompt_id\":1,\"prompt\":\"\",\"samples\":[{\"text\":\"a\"}]}",
         "completion without \"tokens\""},
        {"{\"step\":1,\"prompt_id\":1,\"prompt\":\"\",\"samples\":[{\"text\":\"a\",\"tokens\":[\"a\"],\"logp\":[]}]}",
         "\"logp\" of a completion is not a list of 1 numbers"},
        {"{\"step\":1,\"prompt_id\":1,\"prompt\":\"\",\"samples\":[{\"text\":\"a\",\"tokens\":[\"a\"],\"advantage\":\"x\"}]}",
         "\"advantage\" of a completion is neither"},
        {"{\"step\":1,\"prompt_id\":1,\"prompt\":\"\",\"samples\":[{\"text\":\"a\",\"tokens\":[\"a\"],\"drawn\":[2]}]}",
         "\"drawn\" of a completion is not a list of lengths with the sum 1"},
        {"{\"step\":1,\"prompt_id\":1,\"prompt\":\"\",\"samples\":[{\"text\":\"a\",\"tokens\":[\"a\"],\"turn_times\":[[0]]}]}",
         "\"turn_times\" of a completion is not a list of pairs of seconds"},
        {"{\"record\":\"clip\",\"step\":1,\"edges\":[0]}", "a record \"clip\" without a histogram"},
        {"{\"record\":\"clop\",\"step\":1}", "a record \"clop\", expected"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char text[600];
        Rollouts r;
        Error e = {""};
        snprintf(text, sizeof text, "{\"record\":\"rollouts\",\"run\":\"aa\"}\n%s\n", table[i].line);
        files_put(files_path("bad.jsonl"), text, strlen(text));
        assert_false(rollouts_read(&r, files_path("bad.jsonl"), &e));
        files_assert_error(&e, table[i].why);
    }
}

/* Shortening counts what it leaves out, and the arrays stay as long as the tokens. */
static void test_shorten(void **state) {
    (void)state;
    Error e;
    json_t *group = group_of(1);
    json_array_append_new(json_object_get(group, "samples"), json_loads(SAMPLE, 0, NULL));
    rollout_shorten(group, 1, 1);
    assert_true(rollout_is_group(group, &e));
    assert_int_equal(json_integer_value(json_object_get(group, "more_samples")), 1);
    json_t *sample = json_array_get(json_object_get(group, "samples"), 0);
    assert_int_equal(json_array_size(json_object_get(sample, "tokens")), 1);
    assert_int_equal(json_integer_value(json_object_get(sample, "more_tokens")), 1);
    json_decref(group);
}

/* ---- which steps ---- */

static void test_steps(void **state) {
    (void)state;
    int64_t out[64];
    assert_int_equal(rollout_dump_steps(1000, 5, out), 5); /* 0, then 1 ... 1000 by factors of ten */
    static const int64_t tens[] = {0, 1, 10, 100, 1000};
    assert_memory_equal(out, tens, sizeof tens);
    assert_int_equal(rollout_dump_steps(3, 24, out), 4);
    assert_int_equal(out[3], 3);
    assert_int_equal(rollout_dump_steps(7, 2, out), 2);
    assert_int_equal(out[1], 7);
    for (int64_t steps = 1; steps < 3000; steps += 37) {
        const size_t n = rollout_dump_steps(steps, 24, out);
        assert_true(n <= 24 && out[0] == 0 && out[n - 1] == steps);
        for (size_t i = 1; i < n; i++) assert_true(out[i] > out[i - 1]);
    }
}

/* ---- values of the tokens ---- */

/* The log-probabilities and entropies that the engine's decoding keeps are those of an uncached forward pass, but for rounding. */
static void test_decode(void **state) {
    (void)state;
    enum { PROMPTS = 3, G = 4, MOST = 9, N = PROMPTS * G, ROWS = 64 };
    static const int32_t prompt[PROMPTS][3] = {{65, 66, 67}, {97, 98, 99}, {49, 43, 50}};
    Error e;
    Model m = models_new(2, 32, 32);
    Rollout engine;
    Completion out[N] = {{0}};
    RolloutRequest q[PROMPTS];
    int32_t drawn[N] = {0};
    float logp[N * MOST], entropy[N * MOST], row_logp[600], row_entropy[600], wanted_logp[MOST], wanted_entropy[MOST];
    const GenerationOptions o = {.max_completion = MOST};
    RolloutDump d = {.stream = 5ull << 33, .drawn = drawn, .row_logp = row_logp, .row_entropy = row_entropy};
    d.fixed = (Generation){.o = &o, .logp = logp, .entropy = entropy};
    Sampling how = sampling_default();
    how.temperature = 0.7f;
    how.max_new = MOST;
    how.stream = d.stream;
    if (!rollout_new(&engine, &m, 5, 3, MOST, &e)) fail_msg("%s", e.text);
    assert_true(engine.work.targets <= 600);
    engine.decode = rollout_dump_decode;
    engine.decode_context = &d;
    for (int i = 0; i < PROMPTS; i++)
        q[i] = (RolloutRequest){
            .prompt = prompt[i], .prompt_len = i + 1, .samples = G, .id = (uint64_t)(i * G), .out = out + i * G};
    if (!rollout_run(&engine, &how, q, PROMPTS, NULL, NULL, &e)) fail_msg("%s", e.text);

    Workspace w;
    Batch b = batch_new(ROWS, ROWS, ROWS);
    if (!workspace_new(&w, &m, ROWS, ROWS, ROWS, false, 0, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < N; i++) {
        const int32_t n = out[i].count, length = i / G + 1;
        int32_t whole[3 + MOST];
        memcpy(whole, prompt[i / G], (size_t)length * sizeof *whole);
        memcpy(whole + length, out[i].tokens, (size_t)n * sizeof *whole);
        batch_clear(&b);
        batch_segment(&b, whole, length + n, 0, -1);
        for (int32_t k = 0; k < n; k++) batch_target(&b, length + k - 1, out[i].tokens[k]);
        model_forward(&m, &w, &b, how.temperature, &(ModelOutput){.logp = wanted_logp, .entropy = wanted_entropy});
        assert_int_equal(drawn[i], n);
        for (int32_t k = 0; k < n;
             k++) { /* values of order 5 from sums of about a hundred terms: a few units of 5e-7 */
            assert_true(fabs((double)logp[i * MOST + k] - wanted_logp[k]) < 1e-5);
            assert_true(fabs((double)entropy[i * MOST + k] - wanted_entropy[k]) < 1e-5);
        }
        completion_free(&out[i]);
    }
    batch_free(&b);
    workspace_free(&w, &m);
    rollout_free(&engine);
    model_free(&m);
}

/* ---- the histogram ---- */

static double uniform(uint64_t *x) {
    *x = *x * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(*x >> 33) / (double)(1ull << 31);
}

/* The share that follows from the counts is that of the loss's own metric, for every loss with a clip. */
static void test_histogram(void **state) {
    (void)state;
    enum { N = 40, T = 25 };
    static const PolicyLossKind losses[] = {POLICY_GRPO,  POLICY_DAPO, POLICY_GSPO,
                                            POLICY_LUSPO, POLICY_GMPO, POLICY_CISPO};
    uint64_t x = 7;
    for (size_t k = 0; k < sizeof losses / sizeof *losses; k++) {
        static float logp[N * T], old[N * T], advantage[N];
        int32_t offset[N + 1];
        PolicyLossConfig c = policy_loss_config(losses[k]);
        const double spread = losses[k] == POLICY_GSPO    ? 0.02
                              : losses[k] == POLICY_LUSPO ? 0.06
                              : losses[k] == POLICY_CISPO ? 4
                                                          : 1.2;
        for (int i = 0; i <= N; i++) offset[i] = i * T;
        for (int i = 0; i < N; i++) advantage[i] = i % 5 ? (float)(uniform(&x) - 0.5) : 0;
        for (int i = 0; i < N * T; i++) {
            old[i] = (float)(-3 * uniform(&x));
            logp[i] = old[i] + (float)(spread * (uniform(&x) - 0.5));
        }
        const PolicyBatch b = {
            .completions = N, .offset = offset, .advantage = advantage, .logp = logp, .old_logp = old};
        const PolicyNormaliser n = policy_normaliser(offset, N, NULL, NULL);
        PolicyStats stats = policy_stats();
        policy_loss(&c, &n, &b, NULL, NULL, &stats);
        double low, high;
        clip_histogram_thresholds(&c, &low, &high);
        ClipHistogram h = clip_histogram(low, high);
        clip_histogram_sizes(&h, advantage, N);
        clip_histogram_policy(&h, &c, &b);
        const bool by_sequence = policy_by_sequence(&c) && losses[k] != POLICY_GMPO;
        const double expected = stats.sum.region / (by_sequence ? stats.sum.completions : stats.sum.tokens);
        assert_true(expected > 0.01 && expected < 0.9);
        assert_true(fabs(clip_histogram_share(&h, low, high) - expected) < 1e-12);
        double all = 0;
        for (int bin = 0; bin < CLIP_BINS; bin++) {
            all += h.sum.zero[bin];
            for (int row = 0; row < CLIP_ROWS; row++) all += h.sum.count[row][bin];
        }
        assert_true(all == (by_sequence ? N : N * T));
    }
}

/* Rows are quartiles of |A|: each sign's rows together hold its tokens, larger ones farther from the middle. */
static void test_histogram_rows(void **state) {
    (void)state;
    const float advantage[] = {1, -2, 3, -4, 0};
    ClipHistogram h = clip_histogram(-0.2, 0.2);
    clip_histogram_sizes(&h, advantage, 5);
    for (int i = 0; i < 5; i++) clip_histogram_add(&h, 0, (double)advantage[i]);
    double row[CLIP_ROWS] = {0}, zero = 0;
    for (int bin = 0; bin < CLIP_BINS; bin++) {
        zero += h.sum.zero[bin];
        for (int r = 0; r < CLIP_ROWS; r++) row[r] += h.sum.count[r][bin];
    }
    assert_true(zero == 1 && row[0] == 1 && row[CLIP_ROWS - 1] + row[CLIP_ROWS - 2] == 1 && row[4] == 1);
    assert_true(row[2] + row[1] == 1);
}

/* ---- the page ---- */

static char *page_of(const Rollouts *r, const char *failed) {
    History h = {.rollouts = r, .rollouts_failed = failed};
    char *page;
    size_t n;
    FILE *f = open_memstream(&page, &n);
    h.program = strdup("train_grpo");
    history_line(&h, 1, 1);
    report_page(f, &h, false);
    fclose(f);
    h.rollouts = NULL;
    history_free(&h);
    assert_page(page, n);
    return page;
}

/* The data of the page's script. */
static json_t *data_of(const char *page) {
    const char *begin = strstr(page, "id='rollouts-data'>");
    assert_non_null(begin);
    begin += strlen("id='rollouts-data'>");
    json_t *data = json_loadb(begin, (size_t)(strstr(begin, "</script>") - begin), JSON_ALLOW_NUL, NULL);
    assert_non_null(data);
    return data;
}

#define EVIL "</script><script>alert(1)</script><!-- <img onerror=x> &\\u2028\\u202e\\u0000\\u001b"

/* A model's output stays text, in the tables and in the script's data, which hold it unchanged. */
static void test_page_hostile(void **state) {
    (void)state;
    Rollouts r;
    Error e = {""};
    FILE *f = fopen(files_path("evil.jsonl"), "w");
    fputs("{\"record\":\"rollouts\",\"run\":\"" EVIL "\",\"program\":\"" EVIL "\"}\n", f);
    for (int step = 0; step < 2; step++)
        for (int fixed = 0; fixed < 2; fixed++)
            fprintf(f,
                    "{\"step\":%d,\"kind\":\"%s\",\"prompt_id\":1,\"prompt\":\"" EVIL "\",\"answer\":\"" EVIL
                    "\",\"samples\":[{\"text\":\"" EVIL "\",\"tokens\":[\"" EVIL "\"],\"logp\":[-1],\"reward\":1,"
                    "\"rewards\":{\"</script><img>\":1},\"stop\":\"" EVIL
                    "\"},{\"text\":\"\",\"tokens\":[],\"reward\":0}]}\n",
                    step, fixed ? "fixed" : "trained");
    assert_int_equal(fclose(f), 0);
    if (!rollouts_read(&r, files_path("evil.jsonl"), &e)) fail_msg("%s", e.text);
    char *page = page_of(&r, EVIL);
    assert_null(strstr(page, "<script>alert"));
    assert_null(strstr(page, "<img"));
    assert_null(strstr(page, "<!--"));
    assert_null(strstr(page, "\xE2\x80\xAE"));
    json_t *data = data_of(page), *text = json_string("</script>");
    const json_t *group = json_array_get(json_object_get(data, "groups"), 0);
    const char *prompt = json_string_value(json_object_get(group, "prompt"));
    assert_true(!strncmp(prompt, "</script><script>", 17) && strstr(prompt, "&\xE2\x80\xA8\xE2\x80\xAE"));
    assert_int_equal(json_array_size(json_object_get(data, "film")), 2);
    json_decref(data), json_decref(text);
    free(page);
    rollouts_free(&r);
}

/* Far more than fits: the page stays within its limit, says what it left out, and keeps the last step. */
static void test_page_size(void **state) {
    (void)state;
    Rollouts r = {0};
    char *line = malloc(400000);
    for (int step = 0; step < 20; step++)
        for (int g = 0; g < 6; g++) {
            int n = sprintf(line, "{\"step\":%d,\"kind\":\"%s\",\"prompt_id\":%d,\"prompt\":\"p\",\"samples\":[", step,
                            g < 2 ? "trained" : "fixed", g);
            for (int k = 0; k < 8; k++) {
                n += sprintf(line + n, "%s{\"reward\":%d,\"text\":\"", k ? "," : "", k % 2);
                for (int t = 0; t < 400; t++) n += sprintf(line + n, "word%d ", t);
                n += sprintf(line + n, "\",\"tokens\":[");
                for (int t = 0; t < 400; t++) n += sprintf(line + n, "%s\"word%d \"", t ? "," : "", t);
                n += sprintf(line + n, "],\"logp\":[");
                for (int t = 0; t < 400; t++) n += sprintf(line + n, "%s-0.12%d", t ? "," : "", t);
                n += sprintf(line + n, "]}");
            }
            n += sprintf(line + n, "]}");
            json_t *object = json_loads(line, 0, NULL);
            Error e;
            assert_true(rollout_is_line(object, NULL, &e));
            rollouts_keep(&r, strdup(line), object);
            json_decref(object);
        }
    char *page = page_of(&r, NULL);
    assert_true(strlen(page) < 2000000);
    assert_non_null(strstr(page, "To keep the page small"));
    assert_non_null(strstr(page, "Completions are cut after"));
    json_t *data = data_of(page);
    const json_t *groups = json_object_get(data, "groups"), *film = json_object_get(data, "film");
    char *dumped = json_dumps(groups, JSON_COMPACT | JSON_REAL_PRECISION(4));
    assert_in_range(strlen(dumped), 1, ROLLOUTS_GROUPS + 20000);
    free(dumped);
    assert_int_equal(json_array_size(groups), 40); /* two of each step */
    assert_int_equal(json_integer_value(json_object_get(json_array_get(groups, 39), "step")), 19);
    assert_int_equal(json_array_size(film), 80);
    json_decref(data);
    free(page), free(line);
    rollouts_free(&r);
}

/* The accuracy against the length, and the pairs of train_dpo over their loss. */
static void test_page_parts(void **state) {
    (void)state;
    History h = {.program = strdup("train_dpo")};
    for (int i = 0; i < 4; i++) {
        history_line(&h, i + 1, i);
        history_value(&h, "eval_accuracy", i + 1, i == 2 ? NAN : 0.1 * i);
        history_value(&h, "eval_completions/mean_length", i + 1, 10 + i);
    }
    history_start(
        &h,
        json_loads("{\"args\":{\"beta\":\"0.5\",\"label-smoothing\":\"0.1\",\"loss-type\":\"sigmoid,sft\"}}", 0, NULL));
    history_pair(&h, 0, "before", "p", "c", "r", 1, -0.5);
    history_pair(&h, 4, "after", "p", "c", "r", 2, -3);
    char *page;
    size_t n;
    FILE *f = open_memstream(&page, &n);
    report_page(f, &h, false);
    fclose(f);
    assert_page(page, n);
    assert_non_null(strstr(
        page,
        "{\"beta\":0.5,\"smoothing\":0.1,\"tau\":0.05,\"lambda\":50,\"loss\":\"sigmoid,sft\",\"pairs\":[[2,-1,0],[4,-6,1]]}</script>"));
    assert_non_null(strstr(page, "<h2>Accuracy and length</h2>"));
    assert_int_equal(occurrences(page, "<title>step "), 3);
    history_free(&h);
    free(page);
}

/* The pairs of train_dpo are drawn over their loss only if they have log-ratios to a reference. */
static void test_page_without_reference(void **state) {
    (void)state;
    const struct {
        const char *loss;
        int widgets;
    } cases[] = {{"tpo-l", 0}, {"simpo,sft", 0}, {"tpo", 0}, {"tpo,ipo", 1}, {"cpo,sigmoid", 1}, {"sigmoid_norm", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        History h = {.program = strdup("train_dpo")};
        char *page;
        size_t n;
        history_start(&h, json_pack("{s:{s:s,s:s}}", "args", "beta", "0.5", "loss-type", cases[i].loss));
        history_pair(&h, 0, "before", "p", "c", "r", 1, -0.5);
        FILE *f = open_memstream(&page, &n);
        report_page(f, &h, false);
        fclose(f);
        assert_page(page, n);
        assert_int_equal(occurrences(page, "data-widget='pairs'"), cases[i].widgets);
        history_free(&h);
        free(page);
    }
    for (int loss = 0; loss < PREFERENCE_LOSSES; loss++) {
        char name[32];
        option_choice_name(PREFERENCE_LOSS_CHOICES, loss, name, sizeof name);
        assert_int_equal(pair_has_reference(name), preference_uses_reference((PreferenceLoss)loss));
    }
}

/* ---- the script ---- */

static void put_list(FILE *f, const char *name, const float *values, int n) {
    fprintf(f, "var %s = [", name);
    for (int i = 0; i < n; i++) {
        if (isnan(values[i])) fprintf(f, "%snull", i ? "," : "");
        else fprintf(f, "%s%.9g", i ? "," : "", (double)values[i]);
    }
    fputs("];\n", f);
}

/* The functions of the page's script give the values of the C functions that they repeat. */
static void test_script(void **state) {
    (void)state;
    enum { G = 6 };
    const float reward[G] = {1, 0, 0.5, -0.25, NAN, 2}, binary[G] = {1, 0, 0, 1, 0, 0};
    const double weight[2] = {1, 1};
    float parts[2 * G], a[G];
    AdvantageStats stats;
    FILE *f = fopen(files_path("script.js"), "w");
    assert_non_null(f);
    fputs(rollouts_js(), f);
    fputs("var R = rollouts;\n"
          "function near(what, a, b) { var list = a instanceof Array ? a : [a], other = b instanceof Array ? b : [b];\n"
          "if (list.length !== other.length) throw new Error(what + ': ' + list.length + ' values');\n"
          "list.forEach(function (v, i) { if (!(Math.abs(v - other[i]) <= 2e-6 * Math.max(1, Math.abs(other[i]))))\n"
          "throw new Error(what + ' ' + i + ': ' + v + ' is not ' + other[i]); }); }\n"
          "function same(a, b) { a = JSON.stringify(a); b = JSON.stringify(b);\n"
          "if (a !== b) throw new Error(a + ' is not ' + b); }\n",
          f);
    put_list(f, "reward", reward, G);
    put_list(f, "binary", binary, G);
    advantage_group(reward, 1, G, SCALE_GROUP, a, &stats);
    put_list(f, "grpo", a, G);
    advantage_group(reward, 1, G, SCALE_NONE, a, &stats);
    put_list(f, "dr", a, G);
    advantage_rloo(reward, 1, G, false, a, &stats);
    put_list(f, "rloo", a, G);
    for (int i = 0; i < G; i++) {
        parts[2 * i] = reward[i];
        parts[2 * i + 1] = isnan(reward[i]) ? NAN : (float)(i * i) / 10;
    }
    advantage_gdpo(parts, weight, NULL, 1, G, 2, a, &stats);
    put_list(f, "gdpo", a, G);
    put_list(f, "parts", parts, 2 * G);
    fputs("near('grpo', R.advantages('grpo', reward, {}), grpo); near('dr', R.advantages('dr_grpo', reward, {}), dr);\n"
          "near('rloo', R.advantages('rloo', reward, {}), rloo);\n"
          "var pairs = reward.map(function (r, i) { return [parts[2 * i], parts[2 * i + 1]]; });\n"
          "near('gdpo', R.advantages('gdpo', reward, {parts: pairs, weights: [1, 1]}), gdpo);\n"
          "near('maxrl', R.advantages('maxrl', binary, {}), [2, -1, -1, 2, -1, -1]);\n"
          /* the mean over all pairs that hold the completion of the pair's normalised pass@2 */
          "var R2 = 1 - 6 / 15, s = Math.sqrt(R2 * (1 - R2)), right = (1 - R2) / s, wrong = (2 / 5 - R2) / s;\n"
          "near('pass@2', R.advantages('passk', binary, {k: 2}), [right, wrong, wrong, right, wrong, wrong]);\n"
          "same(R.advantages('grpo', [1, 1, 1], {}), [0, 0, 0]); same(R.advantages('passk', [0, 0], {k: 1}), [0, 0]);\n"
          "near('flat', R.flat(0.25, 3), 1 / 64 + 27 / 64); same(R.choose(5, 2), 10); same(R.choose(2, 3), 0);\n",
          f);
    PolicyLossConfig clip = policy_loss_config(POLICY_GRPO), sapo = policy_loss_config(POLICY_SAPO),
                     cispo = policy_loss_config(POLICY_CISPO);
    clip.epsilon_high = 0.28;
    clip.delta = 3;
    for (int i = 0; i < 40; i++) {
        const double rho = 0.1 + 0.11 * i, A = i % 2 ? 0.7 : -1.3;
        const PolicyTerm p = policy_clip(&clip, rho, A), q = policy_sapo(&sapo, rho, A),
                         c = policy_cispo(&cispo, rho, A, log(rho));
        fprintf(f,
                "t = R.surrogate('ppo', %.17g, %g, {low: 0.2, high: 0.28, delta: 3}); near('clip', [t.value, t.slope], "
                "[%.17g, %.17g]);\n",
                rho, A, -p.l, -p.drho);
        fprintf(f,
                "t = R.surrogate('sapo', %.17g, %g, {positive: 1, negative: 1.05}); near('sapo', [t.value, t.slope], "
                "[%.17g, %.17g]);\n",
                rho, A, -q.l, -q.drho);
        fprintf(f,
                "t = R.surrogate('cispo', %.17g, %g, {high: 5}); near('cispo', [t.value, t.slope], [%.17g, %.17g]);\n",
                rho, A, -c.l, -c.dlogp);
    }
    static const struct {
        const char *name;
        PreferenceLoss loss;
    } pairs[] = {
        {"sigmoid", PREFERENCE_SIGMOID},   {"hinge", PREFERENCE_HINGE},       {"ipo_sum", PREFERENCE_IPO_SUM},
        {"nca_pair", PREFERENCE_NCA_PAIR}, {"bco_pair", PREFERENCE_BCO_PAIR}, {"sppo_hard", PREFERENCE_SPPO_HARD},
        {"apo_zero", PREFERENCE_APO_ZERO}, {"apo_down", PREFERENCE_APO_DOWN}, {"exo_pair", PREFERENCE_EXO_PAIR},
        {"robust", PREFERENCE_ROBUST},     {"discopop", PREFERENCE_DISCOPOP}, {"dpop", PREFERENCE_DPOP}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        for (int k = 0; k < 12; k++) {
            PreferenceConfig c = preference_config();
            c.beta = k % 2 ? 0.1 : 0.7;
            c.label_smoothing = k % 3 ? 0.2 : pairs[i].loss == PREFERENCE_EXO_PAIR ? 0.01 : 0;
            c.discopop_tau = 0.3;
            c.dpop_lambda = 5;
            const double chosen = 3.1 * k - 15, rejected = 9 - 1.7 * k;
            const PreferenceCompletion both[2] = {
                {.logp = chosen - 4, .ref = -4, .plain = chosen - 4, .length = 3},
                {.logp = rejected - 6, .ref = -6, .plain = rejected - 6, .length = 5}};
            fprintf(
                f,
                "near('%s', R.pairLoss('%s', %.17g, %.17g, {beta: %g, smoothing: %g, tau: 0.3, lambda: 5}), %.17g);\n",
                pairs[i].name, pairs[i].name, chosen, rejected, c.beta, c.label_smoothing,
                preference_pair(&c, pairs[i].loss, both).l);
        }
    ClipHistogram h = clip_histogram(log(0.8), log(1.28));
    uint64_t x = 3;
    const float sizes[] = {0.1F, 0.2F, 0.4F, 0.8F};
    clip_histogram_sizes(&h, sizes, 4);
    for (int i = 0; i < 500; i++) clip_histogram_add(&h, uniform(&x) - 0.5, uniform(&x) - 0.5);
    fputs("var clip = {edges: [", f);
    for (int i = 0; i < CLIP_BINS - 1; i++) fprintf(f, "%s%.4g", i ? "," : "", h.edge[i]); /* as in the file */
    fputs("], counts: [", f);
    for (int row = 0; row < CLIP_ROWS; row++)
        for (int i = 0; i < CLIP_BINS; i++)
            fprintf(f, "%s%s%g%s", row && !i ? "," : "", i ? "," : "[", h.sum.count[row][i],
                    i == CLIP_BINS - 1 ? "]" : "");
    fputs("], zero: [", f);
    for (int i = 0; i < CLIP_BINS; i++) fprintf(f, "%s%g", i ? "," : "", h.sum.zero[i]);
    fprintf(f, "]};\nnear('share', R.clipShare(clip, Math.log(0.8), Math.log(1.28)), %.17g);\n",
            clip_histogram_share(&h, log(0.8), log(1.28)));
    const double r[] = {1, 0.3, -0.5, 2, 2}, gold[] = {0, 1, 2, -1, 0.5};
    static const double betas[] = {0.05, 0.3, 1, 10};
    for (size_t i = 0; i < sizeof betas / sizeof *betas; i++) {
        const RolloutTilt t = rollout_tilt(r, gold, 5, betas[i]);
        double mean = 0; /* E[r] - beta KL = beta log mean exp(r / beta) */
        for (int k = 0; k < 5; k++) mean += exp((r[k] - 2) / betas[i]) / 5;
        const double optimum = 2 + betas[i] * log(mean);
        assert_true(fabs(t.reward - betas[i] * t.kl - optimum) < 1e-12);
        assert_true(t.kl <= log(5) && t.effective >= 1 && t.effective <= 5);
        fprintf(
            f,
            "t = R.tilt([1, 0.3, -0.5, 2, 2], [0, 1, 2, -1, 0.5], %g);\n"
            "near('tilt', [t.reward, t.gold, t.kl, t.effective, t.optimum], [%.17g, %.17g, %.17g, %.17g, %.17g]);\n",
            betas[i], t.reward, t.gold, t.kl, t.effective, optimum);
    }
    fputs(
        "same(R.draw(5, 5, false, 1).sort(), [0, 1, 2, 3, 4]); same(R.draw(3, 7, true, 2).length, 7);\n"
        "var counts = [0, 0, 0, 0];\n"
        "for (var i = 1; i <= 4000; i++) counts[R.draw(4, 2, false, i)[1]]++;\n"
        "counts.forEach(function (n) { if (Math.abs(n - 1000) > 130) throw new Error('draw: ' + counts); });\n"
        "same(R.grams('a b c'), ['a', 'b', 'c', 'a b', 'b c', 'a b c']); same(R.grams('xyz').length, 6);\n"
        "near('distinct', R.distinct(['a b c a b c'], 3), 3 / 4);\n"
        "var rise = R.risen([{text: 'a b'}], [{text: 'c b', reward: 2, gold: 1}, {text: 'c d', reward: 4, gold: 0}], 2);\n"
        "same([rise[0].text, rise[0].before, rise[0].after, rise[0].reward, rise[0].gold], ['c', 0, 1, 3, 0.5]);\n"
        /* "a", "b" and "ab" are more frequent because of "ab c" alone, as is "c" */
        "rise = R.risen([{text: 'x y'}, {text: 'x y'}], [{text: 'ab c', reward: 1}, {text: 'x y', reward: 1}], 9);\n"
        "same(rise.map(function (c) { return c.text; }), ['ab c']);\n"
        "same(R.hacked([1, 2, 3, 4].map(function (i) { return {step: 10 * i, reward: i, gold: -i}; })), 10);\n"
        "same(R.hacked([1, 2, 3, 4].map(function (i) { return {step: i, reward: i, gold: i}; })), -1);\n"
        "same(R.hacked([{step: 1, reward: 1, gold: null}]), -1);\n"
        "same(R.visible('a\\u202e\\u0000\\u001b\\n'), 'a\\\\u202e\\\\x00\\\\x1b\\n');\n"
        "same(R.isDrawn([2, 1, 1], 4), [true, true, false, true]); same(R.isDrawn(null, 2), [true, true]);\n"
        "same(R.turns({tokens: ['a', 'b', 'c', 'd'], drawn: [2, 1, 1], turn_times: [[0, 0.5], [0.75, 1]]}),\n"
        "[{drawn: 2, text: 'ab', observed: 1, answer: 'c', began: 0, ended: 0.5, waited: 0.25},\n"
        "{drawn: 1, text: 'd', observed: 0, answer: '', began: 0.75, ended: 1, waited: null}]);\n"
        /* what was observed before the first turn answers one without tokens */
        "same(R.turns({tokens: ['o', 'a', 'b'], drawn: [0, 1, 1, 1], turn_times: [[0.25, 0.5]]}).map(function (t) {\n"
        "return [t.drawn, t.observed, t.began, t.ended, t.waited]; }), [[0, 1, 0, 0, 0.25], [1, 1, 0.25, 0.5, null]]);\n"
        /* times of another number of turns are left out; the page has the beginning of the tokens only */
        "same(R.turns({tokens: ['a'], drawn: [2, 3], turn_times: [[0, 1], [2, 3]]}),\n"
        "[{drawn: 2, text: 'a', observed: 3, answer: '', began: null, ended: null, waited: null}]);\n"
        "same(R.values({tokens: ['a', 'b'], logp: [-1, -2], ref_logp: [-3, null]}, 'kl'), [2, null]);\n"
        "same(R.values({tokens: ['a', 'b'], advantage: 0.5}, 'advantage'), [0.5, 0.5]);\n"
        /* log rho is 0.1, 0.3 and -0.3: above for a positive advantage, below for a negative one; without old_logp it is 0 */
        "var moved = {tokens: ['a', 'b', 'c', 'd'], advantage: 2, logp: [-1, -1, -1, null], old_logp: [-1.1, -1.3, -0.7, null]};\n"
        "same(R.kept(moved, {low: -0.2, high: 0.2}), [2, 0, 2, 2]); same(R.kept(moved, null), [2, 2, 2, 2]);\n"
        "moved.advantage = [-2, -2, -2, null];\n"
        "same(R.kept(moved, {low: -0.2, high: 0.2}), [-2, -2, 0, null]); same(R.kept(moved, {low: null, high: null}), [-2, -2, -2, null]);\n"
        /* the mean of the three is 0.1 / 3, and cispo keeps every gradient */
        "same(R.kept(moved, {low: 0.04, high: 1, unit: 'completion'}), [0, 0, 0, null]);\n"
        "same(R.kept(moved, {low: 0.03, high: 1, unit: 'completion'}), [-2, -2, -2, null]);\n"
        "same(R.kept(moved, {low: -0.2, high: 0.2, loss: 'cispo'}), [-2, -2, -2, null]);\n"
        "moved.old_logp = null;\n"
        "same(R.kept(moved, {low: -0.2, high: 0.2}), [-2, -2, -2, null]);\n",
        f);
    assert_int_equal(fclose(f), 0);
    char command[300];
    snprintf(command, sizeof command, "duk %s >&2", files_path("script.js")); /* Debian's duktape: scripts/setup.sh */
    assert_int_equal(system(command), 0);
}

/* ---- the programs ---- */

static Rollouts read_of(const char *name) {
    Rollouts r;
    Error e = {""};
    if (!rollouts_read(&r, files_path(name), &e)) fail_msg("%s", e.text);
    return r;
}

static int setup(void **state) {
    if (letters_setup(state)) return 1;
    sh("./train_sft --layers 1 --width 64 --context 64 -i $T/chat.shard --batch-tokens 500 -x 5 -o $T/model.bin -q");
    return 0;
}

#define GRPO "./train_grpo -c $T/model.bin -i $T/tasks.shard -g 4 -p 4 -G 4 --reward random --seed 5 "

/* The model is the same with and without rollouts; the share of clipped tokens is the metric; log-probabilities are
 * those of the sampler, but for rounding. */
static void test_grpo(void **state) {
    (void)state;
    sh(GRPO "-x 8 -o $T/plain.bin --steps-per-generation 2 --num-iterations 2 -l 1e-1 --beta 0.1");
    sh(GRPO "-x 8 -o $T/dumped.bin --steps-per-generation 2 --num-iterations 2 -l 1e-1 --beta 0.1 --metrics $T/m.jsonl "
            "--rollouts $T/d.jsonl --rollout-prompts 3 --rollout-samples 5 --report $T/d.html");
    assert_same_file("plain.bin", "dumped.bin");
    assert_holds(said, "--rollout-steps all would write about");
    Rollouts r = read_of("d.jsonl");
    int clips = 0, fixed = 0, trained = 0;
    for (size_t i = 0; i < r.count; i++) {
        json_t *line = json_loads(r.lines[i].text, JSON_ALLOW_NUL, NULL);
        if (r.lines[i].clip) {
            const double share = json_number_value(json_object_get(line, "share"));
            const double logged = metric("m.jsonl", (int)r.lines[i].step - 1, "clip_ratio/region_mean");
            assert_true(fabs(share - logged) < 1e-3 * fmax(logged, 1e-9));
            clips += logged > 0;
        } else {
            const json_t *samples = json_object_get(line, "samples");
            fixed += r.lines[i].fixed, trained += !r.lines[i].fixed;
            assert_int_equal(json_array_size(samples), r.lines[i].fixed ? 5 : 4);
            for (size_t k = 0; k < json_array_size(samples); k++) {
                const json_t *sample = json_array_get(samples, k), *logp = json_object_get(sample, "logp"),
                             *sampler = json_object_get(sample, "sampler_logp");
                assert_int_equal(json_array_size(json_object_get(sample, "ref_logp")), json_array_size(logp));
                for (size_t t = 0; r.lines[i].fixed && t < json_array_size(logp); t++)
                    assert_true(fabs(json_number_value(json_array_get(logp, t)) -
                                     json_number_value(json_array_get(sampler, t))) < 2e-3);
            }
        }
        json_decref(line);
    }
    assert_true(clips >= 1);
    assert_int_equal(fixed, 3 * 3);   /* steps 0, 4 and 8: the ends of generations */
    assert_int_equal(trained, 2 * 2); /* of steps 4 and 8 */
    rollouts_free(&r);
}

/* train_ppo: the share of clipped tokens over all passes is the metric, advantages are per token, and there is a gold
 * reward. */
static void test_ppo(void **state) {
    (void)state;
    static const char ppo[] =
        "./train_ppo -c $T/model.bin -i $T/tasks.shard -g 4 -p 8 -G 2 -l 1e-1 --seed 5 -x 32 --reward "
        "random --gold-reward length=3 --kl-coef 0.1 --num-mini-batches 2 -o $T/%s -q %s";
    sh(ppo, "plain.bin", "");
    sh(ppo, "dumped.bin", "--metrics $T/p.jsonl --rollouts $T/p.rollouts --rollout-prompts 2 --report $T/p.html");
    assert_same_file("plain.bin", "dumped.bin");
    Rollouts r = read_of("p.rollouts");
    int clips = 0, groups = 0;
    for (size_t i = 0; i < r.count; i++) {
        json_t *line = json_loads(r.lines[i].text, JSON_ALLOW_NUL, NULL);
        if (r.lines[i].clip) {
            const int n = (int)r.lines[i].step / 8 - 1; /* one line of metrics for each generation */
            const double share = json_number_value(json_object_get(line, "share"));
            const double logged = metric("p.jsonl", n, "policy/clipfrac_avg");
            assert_true(fabs(share - logged) < 1e-3 * fmax(logged, 1e-9));
            clips += logged > 0;
        } else {
            const json_t *sample = json_array_get(json_object_get(line, "samples"), 0);
            assert_int_equal(json_is_array(json_object_get(sample, "advantage")), !r.lines[i].fixed);
            assert_true(json_is_number(json_object_get(sample, "gold")) &&
                        json_is_number(json_object_get(sample, "kl")));
            groups++;
        }
        json_decref(line);
    }
    assert_true(clips >= 1);
    assert_int_equal(groups, 2 + 4 * 4); /* steps 0, 8, 16, 24 and 32 */
    rollouts_free(&r);
}

/* Each turn begins after the end of the one before, with numbers for all of them. */
static void assert_times(const json_t *sample) {
    const json_t *times = json_object_get(sample, "turn_times");
    double last = 0;
    assert_int_equal(json_array_size(times), json_integer_value(json_object_get(sample, "turns")));
    for (size_t i = 0; i < 2 * json_array_size(times); i++) {
        const json_t *time = json_array_get(json_array_get(times, i / 2), i % 2);
        assert_true(json_is_number(time) && json_number_value(time) >= last && json_number_value(time) < 3600);
        assert_true(i || json_number_value(time) == 0);
        last = json_number_value(time);
    }
}

/* With a tool: several turns, values for the drawn tokens only, those of the sampler but for rounding. */
static void test_tools(void **state) {
    (void)state;
    static const char format[] = "--tool-format 'call=<c>{arguments}</c>;result=<r>{content}</r>'";
    sh("./data/make_tasks --task bigmul --digits 2 --count 500 --format chat %s -o $T/calls.shard", format);
    sh("./data/make_tasks --task bigmul --digits 2 --count 100 --seed 2 -o $T/muls.shard");
    sh("./train_sft --layers 1 --width 64 --heads 2 --context 64 -i $T/calls.shard -x 60 --batch-tokens 1024 -l 5e-3 "
       "-o $T/calls.bin -q");
    sh("./train_grpo -c $T/calls.bin -i $T/muls.shard -p 4 -G 4 -g 44 -x 2 -o $T/grpo.bin -q --tools calculator %s --beta "
       "0.1 --rollouts $T/tools.jsonl --rollout-samples 8 --report $T/tools.html",
       format);
    Rollouts r = read_of("tools.jsonl");
    int several = 0, observed = 0;
    for (size_t i = 0; i < r.count; i++) {
        json_t *line = json_loads(r.lines[i].text, JSON_ALLOW_NUL, NULL), *samples = json_object_get(line, "samples");
        for (size_t k = 0; k < json_array_size(samples); k++) {
            const json_t *sample = json_array_get(samples, k), *logp = json_object_get(sample, "logp"),
                         *sampler = json_object_get(sample, "sampler_logp"), *runs = json_object_get(sample, "drawn");
            several += json_integer_value(json_object_get(sample, "turns")) > 1;
            assert_times(sample);
            for (size_t run = 0, t = 0; run < json_array_size(runs); run++)
                for (json_int_t n = json_integer_value(json_array_get(runs, run)); n > 0; n--, t++) {
                    const json_t *a = json_array_get(logp, t), *b = json_array_get(sampler, t);
                    observed += run % 2;
                    assert_int_equal(json_is_null(a), run % 2);
                    assert_int_equal(json_is_null(b), run % 2);
                    if (run % 2 == 0) assert_true(fabs(json_number_value(a) - json_number_value(b)) < 2e-3);
                }
        }
        json_decref(line);
    }
    assert_true(several > 4 && observed > 8);
    rollouts_free(&r);
}

/* train_dpo --online: the policy's pairs, with its log-probabilities after the step. */
static void test_dpo(void **state) {
    (void)state;
    static const char dpo[] = "./train_dpo --online -c $T/model.bin -i $T/prompts.shard -l 1e-2 --seed 5 -x 3 --reward "
                              "length=3 --max-completion-length 6 --per-device-train-batch-size 4 -o $T/%s -q %s";
    sh(dpo, "plain.bin", "");
    sh(dpo, "dumped.bin", "--rollouts $T/d.rollouts --rollout-steps all --rollout-samples 3 --rollout-prompts 2");
    assert_same_file("plain.bin", "dumped.bin");
    Rollouts r = read_of("d.rollouts");
    assert_int_equal(r.count, 2 + 3 * 4);
    for (size_t i = 0; i < r.count; i++) {
        json_t *line = json_loads(r.lines[i].text, JSON_ALLOW_NUL, NULL);
        assert_int_equal(json_array_size(json_object_get(line, "samples")), r.lines[i].fixed ? 3 : 2);
        json_decref(line);
    }
    rollouts_free(&r);
    refused(2, "./train_dpo -c $T/model.bin -i $T/prefs.shard -x 1 -o $T/x.bin --rollouts $T/x.jsonl",
            "used only with --online");
}

static void test_grpo_resume(void **state) {
    (void)state;
    sh(GRPO "-l 1e-2 -x 6 -o $T/whole.bin --rollouts $T/whole.jsonl --rollout-steps all");
    sh(GRPO
       "-l 1e-2 -x 6 -o $T/parts.bin --rollouts $T/parts.jsonl --rollout-steps all --save-steps 4 --state $T/run.state");
    sh(GRPO "-l 1e-2 -x 6 -o $T/parts.bin --rollouts $T/parts.jsonl --rollout-steps all --resume $T/run.state");
    assert_same_file("whole.bin", "parts.bin");
    assert_same_file("whole.jsonl", "parts.jsonl");
    sh(GRPO "-x 2 -o $T/full.bin --rollouts /dev/full");
    assert_holds(said, "no further rollouts are written, and the run goes on");
    refused(1, GRPO "-l 1e-2 -x 6 -o $T/parts.bin -q --rollouts $T/d.jsonl --resume $T/run.state",
            "it holds the rollouts of another run");
    refused(2, GRPO "-x 2 -o $T/x.bin --rollouts $T/x.jsonl --rollout-steps 1", "neither a number from 2");
    refused(2, GRPO "-x 2 -o $T/x.bin --rollouts -", "give a file");
    refused(2, GRPO "-x 2 -o $T/x.bin --rollout-prompts 3", "used only with --rollouts");
    refused(2, GRPO "-x 2 -o $T/x.bin --rollouts $T/x.bin", "both are");
    refused(1, GRPO "-x 2 -o $T/x.bin --rollouts $T/x.jsonl --rollout-samples 4000 -q", "can be sampled at once");
}

static void test_show(void **state) {
    (void)state;
    const char *line = "{\"record\":\"rollouts\",\"run\":\"aa\",\"program\":\"train_grpo\"}\n"
                       "{\"step\":4,\"prompt_id\":9,\"prompt\":\"ab\",\"answer\":\"c\",\"samples\":["
                       "{\"text\":\"\\u001b[31m\\u202e\\u0000\",\"tokens\":[\"\\u001b\",\"[\"],\"drawn\":[1,1],"
                       "\"logp\":[-1,-2],\"advantage\":0.5,\"reward\":1,\"right\":true,\"stop\":\"max_tokens\"},"
                       "{\"text\":\"d\",\"tokens\":[\"d\"],\"reward\":0,\"right\":false}]}\n";
    files_put(files_path("show.jsonl"), line, strlen(line));
    sh("./data/show $T/show.jsonl");
    assert_holds(out, "rollouts of train_grpo, run aa: 1 group of steps 4");
    assert_holds(out, "-- step 4, prompt 9: 2 completions  mean reward 0.5  deviation 0.7071");
    assert_holds(out, "\\x1b[31m\\u202e\\x00");
    assert_holds(out, "[0] right  reward 1  A 0.5");
    assert_holds(out, "(2 tokens, max_tokens)");
    assert_null(strchr(out, 27));
    sh("./data/show --tokens --prompt 9 - <$T/show.jsonl");
    assert_holds(out, "\"[\" (observed)");
    refused(1, "./data/show --step 5 $T/show.jsonl", "no group of step 5");
    refused(1, "./data/show --prompt 5 $T/show.jsonl", "no group of prompt 5");
    refused(2, "./data/show --step 5 $T/tasks.shard", "used only for rollouts");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_texts),
                                       cmocka_unit_test(test_resume),
                                       cmocka_unit_test(test_cut),
                                       cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_shorten),
                                       cmocka_unit_test(test_steps),
                                       cmocka_unit_test(test_decode),
                                       cmocka_unit_test(test_histogram),
                                       cmocka_unit_test(test_histogram_rows),
                                       cmocka_unit_test(test_grpo),
                                       cmocka_unit_test(test_grpo_resume),
                                       cmocka_unit_test(test_ppo),
                                       cmocka_unit_test(test_dpo),
                                       cmocka_unit_test(test_tools),
                                       cmocka_unit_test(test_show),
                                       cmocka_unit_test(test_page_hostile),
                                       cmocka_unit_test(test_page_size),
                                       cmocka_unit_test(test_page_parts),
                                       cmocka_unit_test(test_page_without_reference),
                                       cmocka_unit_test(test_script)};
    return cmocka_run_group_tests(tests, setup, models_teardown);
}
