/* test_off_policy.c - demonstrations among the completions of a group: the loss (loss/off_policy.h, loss/policy.h) and the
 * advantages against values from LUFFY's code (golden/off_policy.txt, written by dev/golden/golden_off_policy.py), and
 * against central differences; demonstrations in records (rollout/off_policy.h), with their tokens against chat_encode(). */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "../llmc/base/error.h"          /* Error */
#include "../llmc/base/options.h"        /* option_choice_index */
#include "../llmc/base/random.h"         /* random_real, Random, random_normal, random_start */
#include "../llmc/loss/advantage.h"      /* AdvantageStats, SCALE_NONE, advantage_group */
#include "../llmc/loss/clip_histogram.h" /* clip_histogram_policy, ClipHistogram, clip_histogram */
#include "../llmc/loss/off_policy.h"     /* OFF_POLICY_RESHAPE_CHOICES, off_policy_default, off_policy_ratio, ... */
#include "../llmc/loss/policy.h"         /* PolicyBatch, PolicyLossConfig, policy_loss_config, ... */
#include "../llmc/loss/scalar.h"         /* LossMetric */
#include "../llmc/model/model_text.h"    /* ModelText, model_text_close */
#include "../llmc/rollout/off_policy.h"  /* Demonstrations, demonstrations_completion, demonstrations_free, ... */
#include "../llmc/rollout/prompts.h"     /* Prompts, PromptText */
#include "../llmc/rollout/rollout.h"     /* Completion, Sampling, completion_free, sampling_add_stops, ... */
#include "../llmc/text/chat.h"           /* ChatMessage, chat_encode, chat_add_specials, chat_stop_token, ... */
#include "../llmc/text/tokenizer.h"      /* tokenizer_bytes */
#include "golden.h"                      /* check_near, golden, golden_floats, Golden, ... */

enum { MOST_TOKENS = 64, MOST_COMPLETIONS = 16 };

/* The value of a metric of policy_metrics(); NaN if there is none. */
static double metric_of(const PolicyLossConfig *c, const PolicyStats *s, const char *name) {
    LossMetric metric[POLICY_METRICS];
    const int n = policy_metrics(c, s, metric);
    for (int i = 0; i < n; i++)
        if (!strcmp(metric[i].name, name)) return metric[i].value;
    return NAN;
}

/* LUFFY divides the sum of the tokens' losses by their number, as dapo and bnpo do, or by a constant: dr_grpo divides by the
 * number of completions, too. */
static void test_loss_golden(void **state) {
    (void)state;
    FILE *f = golden_open("off_policy.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "loss")) continue;
        const double *config = golden(&g, "config"), *expected = golden(&g, "dlogp"), *off = golden(&g, "off_policy");
        int32_t offset[MOST_COMPLETIONS];
        uint8_t off_policy[MOST_COMPLETIONS];
        const int n = golden_offsets(&g, "length", offset, MOST_COMPLETIONS, MOST_TOKENS);
        for (int i = 0; i < n; i++) off_policy[i] = off[i] != 0;
        PolicyLossConfig c = policy_loss_config(config[2] > 0 ? POLICY_DR_GRPO : POLICY_DAPO);
        c.off_policy.reshape = option_choice_index(OFF_POLICY_RESHAPE_CHOICES, g.family);
        c.off_policy.gamma = config[0];
        c.epsilon = c.epsilon_high = config[1];
        if (config[2] > 0) c.max_completion_length = config[2];
        const double factor = config[2] > 0 ? n : 1;
        float *advantage = golden_floats(&g, "advantage"), *logp = golden_floats(&g, "logp"),
              *old = golden_floats(&g, "old"), dlogp[MOST_TOKENS];
        const PolicyBatch b = {.completions = n,
                               .offset = offset,
                               .advantage = advantage,
                               .logp = logp,
                               .old_logp = old,
                               .off_policy = off_policy};
        const PolicyNormaliser all = policy_normaliser(offset, n, NULL, NULL);
        PolicyStats stats = policy_stats();
        check_near(factor * policy_loss(&c, &all, &b, dlogp, NULL, &stats), *golden(&g, "loss"), 1e-3, 1e-6, g.name);
        for (int t = 0; t < offset[n]; t++)
            check_near(factor * dlogp[t], expected[t], largest(expected, offset[n]) * 0.1, 1e-6, g.name);
        check_near(metric_of(&c, &stats, "off_policy/ratio_mean"), *golden(&g, "ratio_mean"), 0.01, 1e-6, g.name);
        check_near(metric_of(&c, &stats, "off_policy/prob"), *golden(&g, "prob"), 0.01, 1e-6, g.name);
        free(advantage), free(logp), free(old);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 8);
}

/* The demonstration's reward is in the mean of its group. */
static void test_advantage_golden(void **state) {
    (void)state;
    FILE *f = golden_open("off_policy.txt");
    Golden g;
    int cases = 0;
    for (; golden_next(f, &g); golden_free(&g)) {
        if (strcmp(g.kind, "advantage")) continue;
        const int n = golden_count(&g, "reward"), G = (int)*golden(&g, "group");
        float *reward = golden_floats(&g, "reward"), A[MOST_COMPLETIONS];
        AdvantageStats stats;
        assert_true(n <= MOST_COMPLETIONS);
        advantage_group(reward, n / G, G, SCALE_NONE, A, &stats);
        for (int i = 0; i < n; i++) check_near(A[i], golden(&g, "advantage")[i], 0.1, 1e-6, g.name);
        free(reward);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 1);
}

/* f(p) at known points, and the place of its largest slope. */
static void test_ratio(void **state) {
    (void)state;
    const OffPolicy shaped = off_policy_default(), plain = {OFF_POLICY_NO_RESHAPE, 0.1};
    double slope;
    check_near(off_policy_ratio(&shaped, log(0.1), &slope), 0.5, 0, 1e-12, "f(gamma)");
    check_near(slope, 0.25, 0, 1e-12, "slope at gamma");
    check_near(off_policy_ratio(&shaped, 0, &slope), 1 / 1.1, 0, 1e-12, "f(1)");
    assert_true(off_policy_ratio(&shaped, -1e4, &slope) == 0 && slope == 0);
    for (int i = -40; i <= 40; i++) {
        off_policy_ratio(&shaped, log(0.1) + i / 10.0, &slope);
        assert_true(i ? slope < 0.25 : fabs(slope - 0.25) < 1e-12);
    }
    check_near(off_policy_ratio(&plain, log(0.3), &slope), 0.3, 0, 1e-12, "no_reshape");
    check_near(slope, 0.3, 0, 1e-12, "slope of no_reshape");
}

enum { N = 6, T = 4 };

typedef struct Mixed {
    int32_t offset[N + 1];
    float advantage[N], logp[N * T], old[N * T], ref[N * T], entropy[N * T];
    uint8_t off_policy[N], counts[N];
    PolicyBatch batch;
} Mixed;

/* Completions of which each third is a demonstration; the last one does not count. */
static void mixed_make(Mixed *m, uint64_t seed) {
    Random r = random_start(seed, 0);
    for (int i = 0; i <= N; i++) m->offset[i] = i * T;
    for (int i = 0; i < N; i++) {
        m->advantage[i] = (float)random_normal(&r);
        m->off_policy[i] = i % 3 == 2;
        m->counts[i] = i < N - 1;
    }
    for (int t = 0; t < N * T; t++) {
        m->logp[t] = (float)(-4 * random_real(&r) - 0.1);
        m->old[t] = (float)(m->logp[t] + 0.1 * random_normal(&r));
        m->ref[t] = (float)(m->logp[t] + 0.3 * random_normal(&r));
        m->entropy[t] = (float)random_real(&r);
    }
    m->batch = (PolicyBatch){.completions = N,
                             .offset = m->offset,
                             .advantage = m->advantage,
                             .counts = m->counts,
                             .logp = m->logp,
                             .old_logp = m->old,
                             .ref_logp = m->ref,
                             .entropy = m->entropy,
                             .off_policy = m->off_policy};
}

/* With every loss: the gradient of demonstrations is the slope of the loss, with a KL term and an entropy bonus; that of the
 * other completions is what it is when the demonstrations do not count, up to the normaliser, which is the same here; the parts
 * of micro-batches add up. The differences of a step of 1/64 have an error of h^2/6 f''' < 1e-4 of the largest slope. */
static void test_gradient(void **state) {
    (void)state;
    static Mixed m;
    mixed_make(&m, 7);
    for (int loss = POLICY_GRPO; loss <= POLICY_DPPO; loss++) {
        PolicyLossConfig c = policy_loss_config((PolicyLossKind)loss);
        c.beta = 0.1;
        c.entropy_coef = 0.05;
        const PolicyNormaliser all = policy_normaliser(m.offset, N, m.counts, NULL);
        float dlogp[N * T], dentropy[N * T], part[N * T], unused[N * T], less[N * T];
        PolicyStats stats = policy_stats(), ignored = policy_stats();
        const double whole = policy_loss(&c, &all, &m.batch, dlogp, dentropy, &stats);
        for (int t = 2 * T; t < 3 * T; t++) { /* the demonstration that counts */
            double side[2];
            const float at = m.logp[t];
            for (int k = 0; k < 2; k++) {
                m.logp[t] = at + (k ? 1 : -1) / 64.0f;
                side[k] = policy_loss(&c, &all, &m.batch, unused, part, &ignored);
            }
            m.logp[t] = at;
            check_near(dlogp[t], 32 * (side[1] - side[0]), 0.05, 2e-4, "slope");
            check_near(dentropy[t], -0.05 / all.kept_tokens, 0, 1e-6, "entropy");
        }
        for (int t = 5 * T; t < N * T; t++) assert_true(dlogp[t] == 0 && dentropy[t] == 0);
        assert_true(stats.sum.off_tokens == T && stats.sum.tokens == 4 * T && stats.sum.counted == 4);
        uint8_t counts[N] = {1, 1, 0, 1, 1, 0};
        PolicyBatch sampled = m.batch;
        sampled.counts = counts;
        sampled.off_policy = NULL;
        policy_loss(&c, &all, &sampled, less, unused, &ignored);
        assert_memory_equal(less, dlogp, 2 * T * sizeof *less);
        assert_memory_equal(less + 3 * T, dlogp + 3 * T, 2 * T * sizeof *less);
        double sum = 0;
        for (int i = 0; i < N; i += 2) {
            PolicyBatch b = m.batch;
            b.completions = 2;
            b.offset += i, b.advantage += i, b.counts += i, b.off_policy += i;
            sum += policy_loss(&c, &all, &b, part, unused, &ignored);
        }
        check_near(sum, whole, 0, 1e-12, "parts");
        assert_memory_equal(part, dlogp, sizeof part);
    }
}

/* Without demonstrations nothing changes. The entropy, the ratios and the clips of the metrics are those of the other tokens,
 * and the entropy that the bonus acts on is that of all. */
static void test_metrics(void **state) {
    (void)state;
    static Mixed m;
    mixed_make(&m, 8);
    const uint8_t none[N] = {0};
    PolicyLossConfig c = policy_loss_config(POLICY_DAPO);
    const PolicyNormaliser all = policy_normaliser(m.offset, N, m.counts, NULL);
    PolicyBatch without = m.batch, zero = m.batch;
    without.off_policy = NULL;
    zero.off_policy = none;
    float a[N * T], b[N * T];
    PolicyStats s[2] = {policy_stats(), policy_stats()}, mixed = policy_stats();
    const double first = policy_loss(&c, &all, &without, a, NULL, &s[0]);
    assert_true(first == policy_loss(&c, &all, &zero, b, NULL, &s[1]));
    assert_memory_equal(a, b, sizeof a);
    assert_memory_equal(&s[0], &s[1], sizeof s[0]);
    assert_true(isnan(metric_of(&c, &s[0], "off_policy/tokens")));
    for (int t = 2 * T; t < 3 * T; t++) m.old[t] = m.logp[t] - 5; /* a ratio of e^5, if it were one */
    policy_loss(&c, &all, &m.batch, a, NULL, &mixed);
    assert_true(mixed.max.ratio < 2);
    double entropy[2] = {0}; /* of the samples, of the demonstration that counts */
    for (int t = 0; t < 5 * T; t++) entropy[t / T == 2] += (double)m.entropy[t];
    check_near(metric_of(&c, &mixed, "entropy"), entropy[0] / (4 * T), 0, 1e-12, "entropy");
    assert_true(mixed.sum.kept == 5 * T);
    check_near(mixed.sum.kept_entropy, entropy[0] + entropy[1], 0, 1e-12, "entropy of all");
    check_near(metric_of(&c, &mixed, "off_policy/tokens"), 1.0 / 5, 0, 1e-12, "fraction of the tokens");
    ClipHistogram h = clip_histogram(log(0.8), log(1.2));
    double tokens = 0;
    clip_histogram_policy(&h, &c, &m.batch);
    for (int bin = 0; bin < CLIP_BINS; bin++)
        for (int row = 0; row < CLIP_ROWS; row++) tokens += h.sum.count[row][bin];
    assert_true(tokens == 4 * T);
}

/* ---- records ---- */

enum { CONTEXT = 48, LONGEST = 30 };

/* A model's text with a template, how it samples, and prompts with these fields. */
typedef struct Given {
    ModelText text;
    Sampling how;
    Prompts prompts;
} Given;

static const char question[] = "2+3=";

static void given_open(Given *x, const char *template, const char *const *fields, int count) {
    Error e;
    *x = (Given){.text.present = true, .text.has_template = true};
    ModelText *t = &x->text;
    Prompts *p = &x->prompts;
    assert_true(tokenizer_bytes(&t->tokenizer, &e) && chat_template_parse(&t->chat, template, &e) &&
                chat_add_specials(&t->chat, &t->tokenizer, &e));
    t->stop = chat_stop_token(&t->chat, &t->tokenizer);
    token_list_add(&t->ends, t->stop);
    x->how = sampling_default();
    x->how.max_new = LONGEST;
    assert_true(sampling_add_stops(&x->how, &t->ends, &e));
    p->shard.name = strdup("tasks.shard");
    p->offset = (int64_t *)xcalloc((size_t)count + 1, sizeof *p->offset);
    p->what = (PromptText *)xcalloc((size_t)count, sizeof *p->what);
    TokenList ids = {0};
    for (int i = 0; i < count; i++) {
        const ChatMessage m = {"user", question};
        if (!chat_encode(&t->chat, &t->tokenizer, &m, 1, true, &ids, NULL, &e)) fail_msg("%s", e.text);
        p->what[i].fields = fields[i];
        p->offset[i + 1] = ids.count;
    }
    p->tokens = ids.ids;
    p->count = count;
}

static void given_close(Given *x) {
    model_text_close(&x->text);
    free(x->prompts.tokens), free(x->prompts.offset), free(x->prompts.what), free(x->prompts.shard.name);
}

static bool given_read(Given *x, Demonstrations *d, Error *e) {
    return demonstrations_read(d, &x->prompts, &x->text, &x->how, CONTEXT, e);
}

/* The prompt with its demonstration is the conversation of both, up to the token that ends the turn. */
static void test_tokens(void **state) {
    (void)state;
    static const char *const templates[] = {
        "plain", "chatml", "llama", "{user}Q: {content}\\n{assistant}A:{content} end{eos}\\n", "{any}{content}\\n"};
    static const char *const fields[] = {"{\"target\":\"It is 5\"}"};
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++) {
        Given x;
        Error e;
        TokenList all = {0};
        uint8_t *mask = NULL;
        Demonstrations d = {.key = "target", .most = 1};
        const ChatMessage m[] = {{"user", question}, {"assistant", "It is 5"}};
        given_open(&x, templates[i], fields, 1);
        if (!given_read(&x, &d, &e)) fail_msg("%s: %s", templates[i], e.text);
        if (!chat_encode(&x.text.chat, &x.text.tokenizer, m, 2, false, &all, &mask, &e)) fail_msg("%s", e.text);
        const int32_t prompt = (int32_t)x.prompts.offset[1];
        Completion c = demonstrations_completion(&d, 0, 0);
        assert_true(prompt + c.count <= all.count && c.finished && !c.trajectory);
        assert_memory_equal(all.ids, x.prompts.tokens, (size_t)prompt * sizeof *all.ids);
        assert_memory_equal(all.ids + prompt, c.tokens, (size_t)c.count * sizeof *all.ids);
        assert_int_equal(c.tokens[c.count - 1], x.text.stop);
        for (int32_t t = 0; t < c.count; t++) assert_true(isnan(c.logp[t]));
        for (int32_t t = 0; t < all.count; t++) /* what train_sft would train on */
            if (strcmp(templates[i], templates[3])) assert_true(mask[t] == (t >= prompt && t < prompt + c.count));
        completion_free(&c);
        token_list_free(&all);
        free(mask);
        demonstrations_free(&d);
        given_close(&x);
    }
}

/* The forms of the field; demonstrations that are too long or too many; prompts without one. */
static void test_forms(void **state) {
    (void)state;
    static const char *const fields[] = {"",
                                         "{\"target\":\"one\",\"other\":1}",
                                         "{\"target\":{\"role\":\"assistant\",\"content\":\"two\"}}",
                                         "{\"target\":[{\"content\":\"three\",\"role\":\"assistant\"}]}",
                                         "{\"target\":[\"four\",\"five\",\"six\"]}",
                                         "{\"target\":null}",
                                         "{\"target\":[]}",
                                         "{\"target\":[\"this one has more than thirty bytes\",\"seven\"]}",
                                         "{\"target\":\"thirty bytes without its ending.\"}",
                                         "{\"target\":\"a\\u0000b\"}"};
    static const int32_t number[] = {0, 1, 1, 1, 2, 0, 0, 1, 0, 1};
    static const char *const first[] = {"", "one", "two", "three", "four", "", "", "seven", "", "a\0b"};
    Given x;
    Error e;
    Demonstrations d = {.key = "target", .most = 2};
    given_open(&x, "plain", fields, 10);
    if (!given_read(&x, &d, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(demonstrations_of(&d, i), number[i]);
        if (!number[i]) continue;
        Completion c = demonstrations_completion(&d, i, 0);
        size_t n;
        char *text = model_text_decode_bytes(&x.text, c.tokens, c.count, false, &n);
        assert_true(n == (i == 9 ? 3 : strlen(first[i])));
        assert_memory_equal(text, first[i], n);
        free(text);
        completion_free(&c);
    }
    assert_true(d.count == 7 && d.prompts == 6 && d.too_long == 2 && d.beyond == 1 && d.shortened == 0);
    assert_true(demonstrations_offered(&x.prompts, "target") && !demonstrations_offered(&x.prompts, "other"));
    assert_false(demonstrations_offered(&x.prompts, "none"));
    demonstrations_free(&d);
    given_close(&x);
}

/* A demonstration ends where a sample would; the context leaves less room than --max-completion-length; an opening tag that
 * the prompt has is not repeated. */
static void test_ends(void **state) {
    (void)state;
    static const char *const lines[] = {"{\"t\":\"5\\nand so on\"}"};
    static const char *const thought[] = {"{\"t\":\"<think>\\nx</think>5\"}"};
    Given x;
    Error e;
    Demonstrations d = {.key = "t", .most = 1};
    given_open(&x, "{any}{content}\\n", lines, 1); /* a turn ends with the newline */
    assert_true(given_read(&x, &d, &e) && d.count == 1 && d.shortened == 1 && d.offset[1] == 2);
    demonstrations_free(&d);
    given_close(&x);
    for (int stop = 0; stop < 2; stop++) { /* --stop TEXT */
        static const char *const words[] = {"{\"t\":\"so 5. Right\"}"};
        given_open(&x, "plain", words, 1);
        x.how.texts = (StopTexts){.tokenizer = &x.text.tokenizer, .text = {". "}, .count = stop};
        d = (Demonstrations){.key = "t", .most = 1};
        assert_true(given_read(&x, &d, &e) && d.shortened == stop && d.offset[1] == (stop ? 6 : 12));
        demonstrations_free(&d);
        given_close(&x);
    }
    for (int room = 11; room <= 12; room++) { /* 11 bytes and the end */
        static const char *const words[] = {"{\"t\":\"so 5. Right\"}"};
        given_open(&x, "plain", words, 1);
        d = (Demonstrations){.key = "t", .most = 1};
        const bool ok = demonstrations_read(&d, &x.prompts, &x.text, &x.how, (int32_t)strlen(question) + room, &e);
        assert_true(ok == (room == 12) && d.too_long == (room == 11));
        if (!ok) assert_non_null(strstr(e.text, "none of the 1 demonstrations fits"));
        demonstrations_free(&d);
        given_close(&x);
    }
    for (int open = 0; open < 2; open++) {
        given_open(&x, open ? "{user}{content}{assistant}<think>\\n{content}{eos}" : "plain", thought, 1);
        d = (Demonstrations){.key = "t", .most = 1};
        assert_true(given_read(&x, &d, &e) && d.offset[1] == (open ? 11 : 19));
        demonstrations_free(&d);
        given_close(&x);
    }
}

static void test_bad_fields(void **state) {
    (void)state;
    static const struct {
        const char *fields, *part;
    } bad[] = {
        {"{\"target\":24}", "prompt 1: field 'target' has a number, expected a demonstration"},
        {"{\"target\":[true]}", "has true or false, expected a demonstration"},
        {"{\"target\":[[\"a\"]]}", "has a list, expected a demonstration"},
        {"{\"target\":\"\"}", "has an empty demonstration"},
        {"{\"target\":[{\"role\":\"user\",\"content\":\"a\"}]}", "a message whose role is not assistant"},
        {"{\"target\":[{\"content\":\"a\"}]}", "a message whose role is not assistant"},
        {"{\"target\":[{\"role\":\"assistant\",\"content\":[]}]}", "a message without a text in 'content'"},
        {"{\"targets\":\"a\"}", "no prompt has the field 'target' with a demonstration"},
        {"", "no prompt has the field 'target' with a demonstration"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Given x;
        Error e;
        Demonstrations d = {.key = "target", .most = 3};
        given_open(&x, "plain", &bad[i].fields, 1);
        assert_false(given_read(&x, &d, &e));
        if (!strstr(e.text, bad[i].part) || strncmp(e.text, "tasks.shard: ", 13) || strchr(e.text, '\n'))
            fail_msg("%s: %s", bad[i].fields, e.text);
        demonstrations_free(&d);
        given_close(&x);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_golden), cmocka_unit_test(test_advantage_golden),
        cmocka_unit_test(test_ratio),       cmocka_unit_test(test_gradient),
        cmocka_unit_test(test_metrics),     cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_forms),       cmocka_unit_test(test_ends),
        cmocka_unit_test(test_bad_fields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
