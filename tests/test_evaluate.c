/* test_evaluate.c - ./evaluate and its estimators.
 *
 * pass@k and best@k are checked against all subsets, Wilson's interval against the equation that it solves, losses
 * against a softmax in double over the logits of single records, and every figure of a prompt shard against one
 * recomputed from the completions that were written. Needs ./evaluate. */
#include "../llmc/base/error.h"         /* Error, xstrdup */
#include "../llmc/cpu/cpu.h"            /* backend_cpu */
#include "../llmc/model/config.h"       /* ModelConfig, gpt2_config */
#include "../llmc/model/model.h"        /* model_free, Model, model_init, model_new */
#include "../llmc/model/model_file.h"   /* model_save */
#include "../llmc/model/model_load.h"   /* ModelFile, model_file_free */
#include "../llmc/records/shard.h"      /* RECORD_PROMPT, ShardWriter, RECORD_CHAT, shard_add, ... */
#include "../llmc/records/tokens.h"     /* TokenMeaning, tokens_write */
#include "../llmc/rollout/certainty.h"  /* certainty_of */
#include "../llmc/rollout/evaluation.h" /* pass_at_k, wilson_interval, Evaluation, EvaluationPrompt, ... */
#include "../llmc/rollout/rollout.h"    /* Completion */
#include "../llmc/rollout/votes.h"      /* votes_at_k, majority_right, VOTES_DRAWS, weighted_right */
#include "../llmc/text/jinja_filter.h"  /* kind */
#include "../llmc/text/tokenizer.h"     /* Tokenizer, tokenizer_add_special, tokenizer_bytes, tokenizer_free, ... */
#include "files.h"                      /* files_path, text_of, files_count, files_assert_content */
#include "models.h"                     /* refused, assert_near, json_number_of, models_commit, ... */
#include "shell.h"                      /* run, out, assert_holds, said, ... */

/* ---- estimators ------------------------------------------------------------------------------------------------ */

/* Means over all subsets of k of n samples: contains a correct one; correctness of its best (ties: their mean). */
static void enumerate(const float *reward, const double *right, int n, int k, double *pass, double *best) {
    double any = 0, sum = 0, subsets = 0;
    for (unsigned set = 0; set < 1u << n; set++) {
        if (__builtin_popcount(set) != k) continue;
        double hit = 0, top = -INFINITY, good = 0, ties = 0;
        for (int i = 0; i < n; i++) {
            if (!(set >> i & 1)) continue;
            const double r = isnan(reward[i]) ? -1e300 : reward[i];
            if (right[i] > 0.5) hit = 1;
            if (r > top) {
                top = r;
                good = ties = 0;
            }
            if (r == top) {
                good += right[i];
                ties++;
            }
        }
        any += hit;
        sum += good / ties;
        subsets++;
    }
    *pass = any / subsets;
    *best = sum / subsets;
}

static void pass_and_best_are_means_over_subsets(void **state) {
    (void)state;
    uint32_t x = 5;
    for (int trial = 0; trial < 200; trial++) {
        float reward[9];
        double right[9], pass, best;
        int correct = 0;
        const int n = 1 + trial % 9;
        for (int i = 0; i < n; i++) {
            x = x * 1664525 + 1013904223;
            right[i] = x >> 30 == 0;
            correct += right[i] > 0.5;
            reward[i] = x >> 16 & 7 ? (float)(x >> 20 & 3) - 1 : NAN; /* few distinct values: many ties */
        }
        for (int k = 1; k <= n; k++) {
            enumerate(reward, right, n, k, &pass, &best);
            assert_near(pass_at_k(n, correct, k), pass, 1e-12);
            assert_near(best_at_k(reward, right, n, k), best, 1e-12);
        }
    }
    assert_near(pass_at_k(16, 3, 8), 0.9, 1e-12); /* 1 - C(13,8) / C(16,8) = 1 - 1287 / 12870 */
    assert_near(pass_at_k(4096, 1, 64), 64.0 / 4096, 1e-12);
}

/* A sample that a tool or the sandbox has lost is neither right nor wrong: the figures are those of the others. */
static void lost_samples_do_not_count(void **state) {
    (void)state;
    Error e;
    char *answers[] = {(char *)"5", (char *)"", (char *)"6", (char *)"5"};
    double right[] = {1, NAN, 0, 1}, weight[4] = {0};
    float reward[] = {NAN, NAN, NAN, NAN};
    const Completion completion[4] = {0};
    EvaluationPrompt j = {.answers = answers, .right = right, .weight = weight, .reward = reward, .out = completion};
    Evaluation v = {.samples = 4};
    Outcome o = {.scorable = true};
    evaluation_ks(&v); /* 1, 2, 4 */
    assert_true(evaluation_samples(&v, &o, &j, NULL, &e));
    assert_near(o.pass[0], 2.0 / 3, 1e-12);
    assert_near(o.pass[1], 1, 1e-12); /* two of three hold a right one */
    assert_true(isnan(o.pass[2]));    /* there are no four */
    assert_near(o.majority[0], 2.0 / 3, 1e-12);
    assert_true(isnan(o.majority[2]));
    evaluation_summarise(&v, &o, 1);
    assert_int_equal(v.lost, 1);
    assert_near(v.pass[0], 2.0 / 3, 1e-12);
    assert_true(isnan(v.pass[2]));
}

static void majorities(void **state) {
    (void)state;
    char *const five[] = {"5", "6", "5", "", "7"}, *const tie[] = {"5", "6", "6", "5", "7", ""};
    const double a[] = {1, 0, 1, 0, 0}, b[] = {1, 0, 0, 1, 0, 0}, none[] = {0, 1, 0, 0, 0};
    assert_near(majority_right(five, a, 5), 1, 0);
    assert_near(majority_right(five, none, 5), 0, 0); /* the correct one is in the minority */
    assert_near(majority_right(tie, b, 4), 0.5, 0);   /* 5 and 6 tie, 5 is correct */
    assert_near(majority_right(tie + 4, b + 4, 1), 0, 0);
    char *const empty[] = {"", ""};
    const double ones[] = {1, 1};
    assert_near(majority_right(empty, ones, 2), 0, 0); /* an empty answer has no vote */
    /* pairs of tie: 5 5 and twice 5 "" are right, four ties with 6 and two with 7 count 1/2, the other six are wrong */
    assert_near(votes_at_k(tie, b, NULL, 6, 2), (3 + 0.5 * 6) / 15, 1e-15);
    assert_near(votes_at_k(five, a, NULL, 5, 1), 0.4, 1e-15);
    assert_near(votes_at_k(five, a, NULL, 5, 5), 1, 0);
}

/* Votes of random samples: the mean over all subsets of k, each of them judged by itself. */
static void votes_are_means_over_subsets(void **state) {
    (void)state;
    static char *const names[] = {"", "5", "6", "7", "8"};
    uint32_t x = 3;
    for (int trial = 0; trial < 120; trial++) {
        char *answers[10];
        double right[10], weight[10];
        const int n = 1 + trial % 10, kind = trial % 3; /* kind 0: no weights, 1: few distinct ones, 2: any */
        for (int i = 0; i < n; i++) {
            x = x * 1664525 + 1013904223;
            const int answer = (int)(x >> 28) % 5;
            answers[i] = names[answer];
            right[i] = answer == 1 || (answer == 2 && x >> 20 & 1); /* 6 is sometimes right */
            weight[i] = kind == 1 ? (double)(x >> 16 & 3) / 2 : (double)(x >> 8 & 0xFFFF) / 65536;
        }
        for (int k = 1; k <= n; k++) {
            double sum = 0, subsets = 0;
            for (unsigned set = 0; set < 1u << n; set++) {
                char *some[10];
                double good[10], heavy[10];
                int m = 0;
                if (__builtin_popcount(set) != k) continue;
                for (int i = 0; i < n; i++) {
                    if (!(set >> i & 1)) continue;
                    some[m] = answers[i];
                    good[m] = right[i];
                    heavy[m++] = weight[i];
                }
                sum += weighted_right(some, good, kind ? heavy : NULL, k);
                subsets++;
            }
            assert_near(votes_at_k(answers, right, kind ? weight : NULL, n, k), sum / subsets, 1e-12);
        }
    }
    /* 30 of 60 samples: too many subsets, so random ones. 20 samples say 5, which is right, 40 say 6 */
    char *many[60];
    double ones[60];
    for (int i = 0; i < 60; i++) {
        many[i] = names[i < 20 ? 1 : 2];
        ones[i] = i < 20;
    }
    double tail = 0; /* hypergeometric: more than 15 of 30 are among the 20, and half of 15 */
    for (int c = 15; c <= 20; c++)
        tail += (c == 15 ? 0.5 : 1) * exp(lgamma(21) - lgamma(c + 1) - lgamma(21 - c) + lgamma(41) - lgamma(31 - c) -
                                          lgamma(11 + c) - lgamma(61) + 2 * lgamma(31));
    assert_near(votes_at_k(many, ones, NULL, 60, 30), tail, 4 * sqrt(tail / VOTES_DRAWS) + 1e-12);
    assert_near(votes_at_k(many, ones, NULL, 60, 1), 1.0 / 3, 1e-12);
}

/* KL(U || p) of logits, from its definition. */
static void certainty(void **state) {
    (void)state;
    const float z[] = {1, -2, 0.5f, 3}, flat[] = {7, 7, 7, 7};
    double sum = 0, kl = 0;
    for (int v = 0; v < 4; v++) sum += exp(z[v]);
    for (int v = 0; v < 4; v++) kl += 0.25 * log(0.25 / (exp(z[v]) / sum));
    assert_near(certainty_of(z, 4), kl, 1e-12);
    assert_near(certainty_of(flat, 4), 0, 1e-12);
}

/* At the ends of the interval the share is z standard deviations away: (p - x)^2 = z^2 x (1 - x) / n. */
static void wilson(void **state) {
    (void)state;
    const double z = 1.959963984540054;
    for (int n = 1; n < 200; n += 7)
        for (int c = 0; c <= n; c++) {
            double low, high;
            const double p = (double)c / n;
            wilson_interval(p, n, &low, &high);
            assert_true(low >= 0 && low <= p && p <= high && high <= 1);
            assert_near((p - low) * (p - low), z * z * low * (1 - low) / n, 1e-12);
            assert_near((p - high) * (p - high), z * z * high * (1 - high) / n, 1e-12);
        }
    double low, high;
    wilson_interval(0.8, 10, &low, &high);
    assert_near(low, 0.4901625, 1e-6);
    assert_near(high, 0.9433178, 1e-6);
}

/* ---- loss ------------------------------------------------------------------------------------------------------ */

static Model chance;

/* Sums in double over the targets of one text; the error is computed unit by unit. */
typedef struct Sums {
    double nats, targets, right, entropy, text_nats, bytes;
    double x[64], n[64];
    int units;
} Sums;

/* ids: n inputs. The target after input i is next[i] if mask[i] is set (mask NULL: always). */
static void add(Sums *s, const int32_t *ids, const int32_t *next, const uint8_t *mask, int n) {
    float *z = models_logits(&chance, ids, n);
    double x = 0, count = 0;
    for (int i = 0; i < n; i++) {
        const float *row = z + (size_t)i * MODELS_VOCAB;
        if (mask && !mask[i]) continue;
        const double nats = models_nats(row, 1, next[i]);
        x += nats;
        count++;
        s->right += models_argmax(row) == next[i];
        if (next[i] < 256) {
            s->text_nats += nats;
            s->bytes++;
        }
        for (int v = 0; v < MODELS_VOCAB; v++) {
            const double l = models_nats(row, 1, v);
            s->entropy += exp(-l) * l;
        }
    }
    free(z);
    s->nats += x;
    s->targets += count;
    if (count > 0) {
        s->x[s->units] = x;
        s->n[s->units++] = count;
    }
}

/* The program's losses are float32 log-probabilities, off by about 1e-5 of their size (float32 sums through the
 * layers); their mean is off by 2e-5 at most. Figures that are functions of the loss allow 1e-4. Shares are exact. */
static void assert_loss(const Sums *s, bool bytes) {
    json_t *r = json_line_of(out, 0);
    const double loss = s->nats / s->targets;
    double squares = 0;
    for (int i = 0; i < s->units; i++) squares += pow(s->x[i] - loss * s->n[i], 2);
    assert_near(json_number_of(r, "loss"), loss, 2e-5 * loss);
    assert_near(json_number_of(r, "perplexity"), exp(loss), 1e-4 * exp(loss));
    assert_near(json_number_of(r, "token_accuracy"), s->right / s->targets, 1e-12);
    assert_near(json_number_of(r, "entropy"), s->entropy / s->targets, 1e-4);
    assert_int_equal(json_number_of(r, "tokens"), s->targets);
    if (s->units > 1)
        assert_near(json_number_of(r, "loss_error"), sqrt(squares / (s->units - 1) * s->units) / s->targets,
                    1e-4 * loss);
    else assert_true(json_is_null(json_object_get(r, "loss_error")));
    if (bytes) {
        assert_near(json_number_of(r, "bits_per_byte"), s->text_nats / log(2) / s->bytes, 1e-4);
        assert_int_equal(json_number_of(r, "bytes"), s->bytes);
    } else assert_true(json_is_null(json_object_get(r, "bits_per_byte")));
    json_decref(r);
    assert_int_equal(lines_of(out), 1);
}

enum { CHATS = 12, CONTEXT = 40 };

static void loss_of_chats(void **state) {
    (void)state;
    Error e;
    Sums masked = {0}, all = {0}, first = {0};
    ShardWriter w = models_shard("chat.shard", RECORD_CHAT, "plain"),
                half[2] = {models_shard("half_a.shard", RECORD_CHAT, "plain"),
                           models_shard("half_b.shard", RECORD_CHAT, "plain")};
    uint32_t x = 9;
    for (int i = 0; i < CHATS; i++) {
        int32_t ids[64];
        uint8_t mask[64];
        const int n = i == 3 ? 50 : 4 + 3 * i; /* the fourth is longer than the context */
        for (int k = 0; k < n; k++) {
            x = x * 1664525 + 1013904223;
            ids[k] = 32 + (int32_t)(x >> 24) % 95;
            mask[k] = k >= n / 2;
        }
        ids[n - 1] = MODELS_EOS;
        if (i == 5) memset(mask, 0, sizeof mask); /* and the sixth has no token to predict */
        const Record r = {.tokens = ids, .count = n, .mask = mask};
        assert_true(shard_add(&w, &r, &e) && shard_add(&half[i >= 5], &r, &e));
        const int kept = n < CONTEXT ? n : CONTEXT;
        add(&masked, ids, ids + 1, mask + 1, kept - 1);
        add(&all, ids, ids + 1, NULL, kept - 1);
        if (i < 5) add(&first, ids, ids + 1, mask + 1, kept - 1);
    }
    models_commit(&w);
    run(0, "./evaluate -c $T/random.bin -i $T/chat.shard");
    assert_loss(&masked, true);
    assert_holds(out, "\"cut\":1");
    assert_holds(out, "\"kind\":\"chat\"");
    assert_holds(out, "\"records\":11");
    assert_holds(said, "1 of 12 records are longer than 40 tokens and were truncated");
    assert_holds(said, "| perplexity");
    char *once = xstrdup(out);
    run(0,
        "./evaluate -c $T/random.bin -i $T/chat.shard --micro-tokens 1"); /* one record per batch: the same numbers */
    assert_loss(&masked, true);
    run(0, "zstd -q -c $T/chat.shard | ./evaluate -c $T/random.bin -i -");
    assert_holds(out, "\"data\":\"standard input\"");
    assert_loss(&masked, true);
    run(0, "./evaluate -c - -i $T/chat.shard --no-completion-only-loss < $T/random.bin");
    assert_loss(&all, true);
    run(0, "./evaluate -c $T/random.bin -i $T/chat.shard --max-prompts 5");
    assert_loss(&first, true);
    free(once);

    /* two files: together, and each */
    models_commit(&half[0]), models_commit(&half[1]);
    run(0, "./evaluate -c $T/random.bin -i \"$T/half_*.shard\"");
    assert_loss(&masked, true);
    assert_holds(out, "\"cut\":1,\"data\":");
    assert_holds(out, "half_a.shard and 1 more\"");
    json_t *two = json_line_of(out, 0), *files = json_object_get(two, "files");
    assert_int_equal(json_array_size(files), 2);
    assert_holds(json_text_of(json_array_get(files, 1), "data"), "half_b.shard");
    assert_near(json_number_of(json_array_get(files, 0), "loss"), first.nats / first.targets, 1e-4);
    assert_int_equal(json_number_of(json_array_get(files, 0), "tokens"), first.targets);
    assert_int_equal(json_number_of(json_array_get(files, 1), "tokens"), masked.targets - first.targets);
    json_decref(two);
    run(0, "./evaluate -c $T/random.bin -i $T/half_a.shard -i $T/half_b.shard --max-prompts 3");
    assert_holds(out, "\"records\":5"); /* the sixth record has no token to predict */
}

/* Windows: every token but the first is predicted once, from the tokens before it in its window. */
static void loss_of_tokens(void **state) {
    (void)state;
    Error e;
    enum { N = 95 };
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = i % 31 ? 32 + i * i % 95 : MODELS_EOS;
    assert_true(tokens_write(files_path("text.bin"), ids, N, (TokenMeaning){0}, &e));
    /* windows of 40, 40 and 14; one of 94 exceeds the context; nine of 10 and one of 4 */
    const int lengths[] = {CONTEXT, 94, 10};
    for (int i = 0; i < 3; i++) {
        Sums s = {0};
        char command[200];
        const int T = lengths[i] < CONTEXT ? lengths[i] : CONTEXT;
        for (int at = 0; at < N - 1; at += T) add(&s, ids + at, ids + at + 1, NULL, N - 1 - at < T ? N - 1 - at : T);
        assert_int_equal(s.targets, N - 1);
        snprintf(command, sizeof command, "./evaluate -c $T/random.bin -i $T/text.bin --max-length %d", lengths[i]);
        run(0, command);
        assert_loss(&s, true);
    }
    Sums s = {0};
    add(&s, ids, ids + 1, NULL, CONTEXT);
    run(0, "./evaluate -c $T/random.bin -i $T/text.bin --max-prompts 1");
    assert_loss(&s, true);
    assert_true(tokens_write(files_path("more.bin"), ids + 1, N - 1, (TokenMeaning){0}, &e));
    Sums two = s;
    add(&two, ids + 1, ids + 2, NULL, CONTEXT);
    run(0, "./evaluate -c $T/random.bin -i $T/text.bin -i $T/more.bin --max-prompts 1");
    assert_loss(&two, true);
    assert_holds(out, "\"files\":[{\"bits_per_byte\":");
    run(0, "./evaluate -c $T/bare.bin -i $T/text.bin --max-prompts 1");
    assert_loss(&s, false);
    run(0, "./evaluate -c $T/bare.bin --tokenizer bytes -i $T/text.bin --max-prompts 1");
    assert_loss(&s, true);
}

/* ---- tasks ----------------------------------------------------------------------------------------------------- */

/* A model that answers one of two digits wherever the prompt ends: position p is followed by a digit of its own or by
 * '5', then by the end of text or another digit. */
static void save_guesser(void) {
    int32_t a[CONTEXT], b[CONTEXT];
    for (int p = 0; p < CONTEXT; p++) {
        a[p] = p % 2 ? '5' : '1' + p / 2 % 4;
        b[p] = p % 2 ? '0' + p / 2 % 5 : MODELS_EOS;
    }
    Model m = models_scripted(CONTEXT, a, b, CONTEXT);
    models_save(&m, "guess.bin", false, NULL);
    model_free(&m);
}

enum { PROMPTS = 24, SAMPLES = 6 };

static void figures_of_tasks(void **state) {
    (void)state;
    save_guesser();
    ShardWriter w = models_shard("tasks.shard", RECORD_PROMPT, "plain");
    for (int i = 0; i < PROMPTS; i++) {
        char text[64], answer[16];
        memset(text, '+', sizeof text);
        snprintf(text, sizeof text, "%.*s=", 1 + i % 9 * 2, "+++++++++++++++++++++++++++");
        snprintf(answer, sizeof answer, "%d", i % 3 ? 5 : i % 7);
        models_add_prompt(&w, text, i % 4 == 3 ? "strange" : i % 4 ? "add" : "exact", answer, "{\"level\":1}");
    }
    models_commit(&w);
    char command[300];
    snprintf(command, sizeof command,
             "./evaluate -c $T/guess.bin -i $T/tasks.shard --num-samples %d -g 4 --reward 'length=1:1,regex=/5/:0.5' "
             "--completions $T/said.jsonl --slots 5 --seed 11",
             SAMPLES);
    run(0, command);
    json_t *figures = json_line_of(out, 0);
    char *lines = text_of(files_path("said.jsonl"));
    assert_int_equal(lines_of(lines), PROMPTS * (SAMPLES + 1));

    /* recomputes every figure from the completions that were written; greedy lines and samples come in blocks of
     * prompts */
    struct {
        char text[SAMPLES][16], *answers[SAMPLES];
        double right[SAMPLES], greedy;
        float reward[SAMPLES];
        char task[16];
    } p[PROMPTS];
    for (int i = 0; i < PROMPTS * (SAMPLES + 1); i++) {
        json_t *row = json_line_of(lines, i);
        const int at = (int)json_number_of(row, "index");
        const char *text = json_text_of(row, "completion"), *answer = json_text_of(row, "answer");
        strcpy(p[at].task, json_text_of(row, "task"));
        /* answers are digits; the check reads the whole number */
        const double right = strspn(text, "0123456789") == strlen(text) && *text && atoi(text) == atoi(answer);
        const json_t *sample = json_object_get(row, "sample");
        if (strcmp(p[at].task, "strange")) assert_int_equal(json_is_true(json_object_get(row, "right")), right > 0.5);
        else assert_true(json_is_null(json_object_get(row, "right")));
        if (json_is_string(sample)) p[at].greedy = right;
        else {
            const int k = (int)json_integer_value(sample);
            const double reward = -0.0003 * fabs(1.0 - (double)json_array_size(json_object_get(row, "tokens"))) +
                                  (strchr(text, '5') ? 0.5 : 0);
            p[at].right[k] = right;
            p[at].reward[k] = (float)reward;
            assert_near(json_number_of(row, "reward"), reward, 1e-6);
            p[at].reward[k] = (float)json_number_of(row, "reward");
            strcpy(p[at].text[k], text);
            p[at].answers[k] = p[at].text[k];
        }
        json_decref(row);
    }
    const char *const tasks[] = {"all", "add", "exact", "strange"};
    for (int t = 0; t < 4; t++) {
        json_t *f = t ? json_object_get(json_object_get(figures, "tasks"), tasks[t]) : figures;
        const int ks[] = {1, 2, 4, SAMPLES};
        double greedy = 0, count = 0;
        for (int i = 0; i < PROMPTS; i++)
            if (strcmp(p[i].task, "strange") && (!t || !strcmp(p[i].task, tasks[t]))) {
                greedy += p[i].greedy;
                count++;
            }
        assert_int_equal(json_number_of(f, "prompts"), count);
        if (t == 3) {
            assert_true(json_is_null(json_object_get(f, "accuracy")));
            assert_int_equal(json_number_of(f, "unscorable"), PROMPTS / 4);
            continue;
        }
        assert_near(json_number_of(f, "accuracy"), greedy / count, 1e-12);
        assert_near(json_number_of(f, "accuracy_error"), sqrt(greedy / count * (1 - greedy / count) / count), 1e-12);
        for (int k = 0; k < 4; k++) {
            double sum[3] = {0}, square[3] = {0};
            for (int i = 0; i < PROMPTS; i++) {
                if (!strcmp(p[i].task, "strange") || (t && strcmp(p[i].task, tasks[t]))) continue;
                double x[3];
                enumerate(p[i].reward, p[i].right, SAMPLES, ks[k], &x[0], &x[2]);
                /* the most frequent number of each subset of k */
                x[1] = 0;
                double subsets = 0;
                for (unsigned set = 0; set < 1u << SAMPLES; set++) {
                    int votes[100] = {0}, most = 0, winners = 0;
                    double good[100] = {0}, won = 0;
                    if (__builtin_popcount(set) != ks[k]) continue;
                    subsets++;
                    for (int s = 0; s < SAMPLES; s++) {
                        if (!(set >> s & 1) || !*p[i].text[s]) continue;
                        int number = 0; /* the first sample with the same answer: as a text, or as a number */
                        while (strcmp(p[i].task, "exact") ? atoi(p[i].text[number]) != atoi(p[i].text[s])
                                                          : strcmp(p[i].text[number], p[i].text[s]) != 0)
                            number++;
                        good[number] = p[i].right[s];
                        if (++votes[number] > most) most = votes[number];
                    }
                    for (int number = 0; number < 100; number++)
                        if (most && votes[number] == most) {
                            winners++;
                            won += good[number];
                        }
                    x[1] += most ? won / winners : 0;
                }
                x[1] /= subsets;
                for (int j = 0; j < 3; j++) {
                    sum[j] += x[j];
                    square[j] += x[j] * x[j];
                }
            }
            const char *const names[] = {"pass", "majority", "best"};
            for (int j = 0; j < 3; j++) {
                char key[40];
                snprintf(key, sizeof key, "%s@%d", names[j], ks[k]);
                assert_near(json_number_of(f, key), sum[j] / count, 1e-9);
                strcat(key, "_error");
                assert_near(json_number_of(f, key),
                            sqrt(fmax(square[j] - sum[j] * sum[j] / count, 0) / (count - 1) / count), 1e-6);
            }
        }
    }
    double pass = json_number_of(figures, "pass@1");
    /* the test covers both outcomes */
    assert_true(pass > 0.05 && pass < 0.95 && json_number_of(figures, "pass@6") > pass);
    json_decref(figures);

    /* samples depend neither on the slots nor on the number of prompts, and they differ for another seed */
    char *first = xstrdup(out);
    run(0, "./evaluate -c $T/guess.bin -i $T/tasks.shard --num-samples 6 -g 4 --reward 'length=1:1,regex=/5/:0.5' "
           "--completions $T/again.jsonl --slots 64 --seed 11");
    assert_string_equal(out, first);
    run(0, "./evaluate -c $T/guess.bin -i $T/tasks.shard --num-samples 6 -g 4 --completions $T/part.jsonl "
           "--max-prompts 1 --seed 11");
    char *part = text_of(files_path("part.jsonl"));
    assert_int_equal(lines_of(part), 7);
    for (int i = 1; i < 7; i++) {
        json_t *a = json_line_of(part, i);
        const int k = (int)json_number_of(a, "sample");
        assert_string_equal(json_text_of(a, "completion"), p[0].text[k]);
        json_decref(a);
    }
    run(0, "./evaluate -c $T/guess.bin -i $T/tasks.shard --num-samples 6 -g 4 --reward 'length=1:1,regex=/5/:0.5' "
           "--seed 12");
    assert_string_not_equal(out, first);
    free(lines), free(first), free(part);

    /* greedy only; a reward program */
    run(0, "./evaluate -c $T/guess.bin -i $T/tasks.shard --num-samples 0 -g 4");
    assert_null(strstr(out, "pass@"));
    assert_holds(said, "greedy accuracy");
    run(0, "./evaluate -c $T/guess.bin -i $T/tasks.shard --num-samples 2 -g 4 "
           "--reward-cmd 'while read -r l; do echo 1; done'");
    assert_holds(out, "\"reward\":1.0,");
}

/* Several files of prompts, and of what a reward model scores: each file has the figures that it has alone. */
static void figures_of_files(void **state) {
    (void)state;
    static const char *const keys[] = {"accuracy", "pass@1", "reward", "finished", "prompts"};
    ShardWriter w = models_shard("five.shard", RECORD_PROMPT, "plain");
    for (int i = 0; i < 7; i++) models_add_prompt(&w, i % 2 ? "++=" : "+=", "exact", i % 3 ? "5" : "2", "");
    models_commit(&w);
    w = models_shard("other.shard", RECORD_PROMPT, "plain");
    for (int i = 0; i < 4; i++)
        models_add_prompt(&w, i % 2 ? "+++=" : "=", "exact", i % 3 ? "3" : "25", "{\"data\":\"its own\"}");
    models_commit(&w);
    const char *const one = "./evaluate -c $T/guess.bin --num-samples 4 -g 4 --reward verify -i $T/five.shard";
    run(0, one);
    json_t *alone = json_line_of(out, 0);
    run(0, "./evaluate -c $T/guess.bin --num-samples 4 -g 4 --reward verify -i $T/five.shard -i $T/other.shard "
           "--completions $T/both.jsonl");
    json_t *both = json_line_of(out, 0), *files = json_object_get(both, "files"), *first = json_array_get(files, 0),
           *second = json_array_get(files, 1);
    assert_int_equal(json_array_size(files), 2);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        assert_near(json_number_of(first, keys[i]), json_number_of(alone, keys[i]), 1e-12);
    const double a = json_number_of(first, "prompts"), b = json_number_of(second, "prompts");
    assert_int_equal(a, 7);
    assert_int_equal(json_number_of(both, "prompts"), a + b);
    assert_near(json_number_of(both, "accuracy"),
                (a * json_number_of(first, "accuracy") + b * json_number_of(second, "accuracy")) / (a + b), 1e-12);
    assert_holds(said, "five.shard: 7 prompts");
    char *lines = text_of(files_path("both.jsonl"));
    json_t *last = json_line_of(lines, lines_of(lines) - 1);
    assert_holds(json_text_of(last, "data"), "other.shard");
    assert_string_equal(json_text_of(json_object_get(last, "fields"), "data"), "its own");
    json_decref(last), json_decref(both), json_decref(alone), free(lines);

    run(0,
        "./train_rm -c $T/random.bin -i $T/pairs.shard -o $T/rm.bin --max-steps 1 && cp $T/pairs.shard $T/more.shard");
    run(0, "./evaluate --reward-model $T/rm.bin -i $T/pairs.shard -i $T/more.shard");
    json_t *r = json_line_of(out, 0);
    assert_int_equal(json_number_of(r, "records"), 2);
    assert_int_equal(json_number_of(json_array_get(json_object_get(r, "files"), 1), "records"), 1);
    json_decref(r);
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

/* log p(option | prompt) of bytes, from the logits of the whole sequence. */
static double option_logp(const char *prompt, const char *option) {
    int32_t ids[2 * CONTEXT];
    char text[2 * CONTEXT];
    const int n = snprintf(text, sizeof text, "%s %s", prompt, option), before = (int)strlen(prompt);
    double sum = 0;
    for (int i = 0; i < n; i++) ids[i] = (uint8_t)text[i];
    float *z = models_logits(&chance, ids, n);
    for (int i = before; i < n; i++) sum -= models_nats(z + (size_t)(i - 1) * MODELS_VOCAB, 1, ids[i]);
    free(z);
    return sum;
}

enum { RANKED = 30, CHOICES = 4 };

/* --rank-options: every log-probability and every figure, from the options as single sequences. */
static void options_are_ranked(void **state) {
    (void)state;
    static const char *const forms[] = {"options", "choices", "endings"};
    double right[4] = {0};
    ShardWriter w[3];
    double logp[RANKED][CHOICES];
    char option[RANKED][CHOICES][32];
    for (int k = 0; k < 3; k++) {
        char name[16];
        snprintf(name, sizeof name, "rank%d.shard", k);
        w[k] = models_shard(name, RECORD_PROMPT, "plain");
    }
    for (int i = 0; i < RANKED; i++) {
        char prompt[32], answer[3][32];
        int best[4] = {0};
        snprintf(prompt, sizeof prompt, "Q%d%.*s:", i, i % 12, "????????????");
        for (int c = 0; c < CHOICES; c++) {
            snprintf(option[i][c], 32, "%.*s%s%d", (c * 7 + i) % 9, "abcdefghi", c % 2 ? "\xC3\xA9" : "e", c);
            logp[i][c] = option_logp(prompt, option[i][c]);
        }
        for (int rule = 0; rule < 4; rule++) {
            double value[CHOICES];
            for (int c = 0; c < CHOICES; c++) {
                const double bytes = (double)strlen(option[i][c]), letters = bytes - c % 2;
                value[c] = logp[i][c] / (rule == 0 ? 1 : rule == 1 ? bytes + 1 : rule == 2 ? letters : bytes);
                if (value[c] > value[best[rule]]) best[rule] = c;
            }
            right[rule] += best[rule] == i % CHOICES;
        }
        snprintf(answer[0], 32, "%s", option[i][i % CHOICES]); /* the text, a letter, an index */
        snprintf(answer[1], 32, "%c", 'A' + i % CHOICES);
        snprintf(answer[2], 32, "%d", i % CHOICES);
        for (int k = 0; k < 3; k++) {
            json_t *list = json_pack("{s:[s,s,s,s]}", forms[k], option[i][0], option[i][1], option[i][2], option[i][3]);
            char *fields = json_dumps(list, 0);
            models_add_prompt(&w[k], prompt, "", answer[k], fields);
            json_decref(list), free(fields);
        }
    }
    static const char *const rule[] = {"acc", "acc_token", "acc_norm", "acc_bytes"};
    for (int k = 0; k < 3; k++) {
        char command[200];
        models_commit(&w[k]);
        for (int rows = 1; rows < 4000; rows += 1500) {
            snprintf(command, sizeof command,
                     "./evaluate -c $T/random.bin -i $T/rank%d.shard --rank-options text --micro-tokens %d "
                     "--completions $T/ranked.jsonl",
                     k, rows);
            run(0, command);
            json_t *result = json_line_of(out, 0);
            for (int r = 0; r < 4; r++) assert_near(json_number_of(result, rule[r]), right[r] / RANKED, 1e-12);
            assert_int_equal(json_number_of(result, "unscorable"), 0);
            json_decref(result);
        }
        char *rows = text_of(files_path("ranked.jsonl"));
        for (int i = 0; i < RANKED; i++) {
            json_t *row = json_line_of(rows, i), *list = json_object_get(row, "logprobs");
            for (int c = 0; c < CHOICES; c++)
                assert_near(json_real_value(json_array_get(list, (size_t)c)), logp[i][c], 1e-3);
            json_decref(row);
        }
        free(rows);
    }
    /* of several files, the figures of each */
    run(0, "./evaluate -c $T/random.bin -i $T/rank0.shard -i $T/rank1.shard --rank-options text");
    json_t *both = json_line_of(out, 0);
    for (size_t k = 0; k < 2; k++) {
        const json_t *one = json_array_get(json_object_get(both, "files"), k);
        assert_near(json_number_of(one, "acc_norm"), right[2] / RANKED, 1e-12);
        assert_int_equal(json_number_of(one, "prompts"), RANKED);
    }
    assert_int_equal(json_number_of(both, "prompts"), 2 * RANKED);
    json_decref(both);
    /* letters instead of texts; a text that stands in no prompt; options that do not fit; none; equal ones */
    run(0, "./evaluate -c $T/random.bin -i $T/rank1.shard --rank-options letter --completions $T/ranked.jsonl");
    char *rows = text_of(files_path("ranked.jsonl"));
    json_t *row = json_line_of(rows, 5);
    assert_near(json_real_value(json_array_get(json_object_get(row, "logprobs"), 2)), option_logp("Q5?????:", "C"),
                1e-3);
    json_decref(row), free(rows);
    ShardWriter few = models_shard("few.shard", RECORD_PROMPT, "plain");
    models_add_prompt(&few, "1", "", "yes", "{\"options\":[\"yes\",\"no\"]}");
    models_add_prompt(&few, "2", "", "perhaps", "{\"options\":[\"yes\",\"no\"]}");
    models_add_prompt(&few, "3", "", "yes", "");
    models_add_prompt(&few, "4", "", "no",
                      "{\"options\":[\"a text of more than forty bytes does not fit here\",\"no\"]}");
    models_commit(&few);
    run(0, "./evaluate -c $T/random.bin -i $T/few.shard --rank-options text");
    assert_holds(said, "all: 1 prompts and 3 that cannot be ranked");
    ShardWriter same = models_shard("same.shard", RECORD_PROMPT, "plain");
    models_add_prompt(&same, "1", "", "yes", "{\"options\":[\"yes\",\"yes\"]}");
    models_commit(&same);
#define RANK "./evaluate -c $T/random.bin --rank-options text -i $T/"
    refused(1, RANK "same.shard", "same.shard: prompt 0: options 0 and 1 are the same");
    refused(1, RANK "tasks.shard", "tasks.shard: no prompt has options");
    refused(2, RANK "few.shard --num-samples 4", "--num-samples: not used with --rank-options");
    refused(2, RANK "chat.shard", "--rank-options: used only for a prompt shard");
    refused(2, "./evaluate -c $T/random.bin -i $T/few.shard --target-delimiter x", "used only with --rank-options");
}

static void bad_input(void **state) {
    (void)state;
    refused(1, "./evaluate -c $T/random.bin -i $T/tasks.shard -i $T/chat.shard",
            "chat.shard: contains chat records, but ");
    refused(1, "./evaluate -c $T/random.bin -i $T/text.bin -i $T/chat.shard", "one is a token shard, the other is not");
    refused(1, "./evaluate -c $T/random.bin -i $T/chat.shard -i $T/random.bin", "this is a checkpoint, expected");
    refused(2, "./evaluate -c $T/random.bin -i $T/chat.shard -i - < /dev/null", "cannot be one of several files");
    refused(2, "./evaluate -c $T/random.bin -i $T/chat.shard -i $T/./chat.shard", "are the same file");
    refused(2, "./evaluate -c $T/random.bin -i $T/chat.shard:3", "is for training data only");
    refused(2, "./evaluate -c $T/random.bin -i \"$T/no*.shards\"", "no file matches the pattern");
    refused(2, "./evaluate -c $T/random.bin -i $T/half_a.shard -i $T/half_b.shard --reference $T/random.bin",
            "--reference: compares two models on one file");
    refused(2, "./evaluate -i x", "-c/--checkpoint is required");
    refused(2, "./evaluate -c $T/random.bin", "-i/--input is required");
    refused(2, "./evaluate -c $T/random.bin -i x y", "y: unexpected argument");
    refused(2, "./evaluate -c - -i - < /dev/null", "only one of them can be standard input");
    refused(2, "./evaluate --judge - -i - < /dev/null", "only one of them can be standard input");
    refused(2, "./evaluate -c $T/random.bin -i $T/tasks.shard --reward nonsense", "reward 'nonsense': unknown");
    refused(2, "./evaluate -c $T/random.bin -i $T/tasks.shard --num-samples 0 --reward verify",
            "no samples to choose from");
    refused(2, "./evaluate -c $T/random.bin -i $T/tasks.shard --temperature 0", "greedy samples are identical");
    refused(2, "./evaluate -c $T/random.bin -i $T/tasks.shard --completions -", "standard output receives the result");
    refused(2, "./evaluate -c $T/random.bin -i $T/tasks.shard --completions $T/kept --num-samples 4096", "at most");
    refused(1, "./evaluate -c $T/random.bin -i $T/none", "none: cannot open");
    refused(1, "./evaluate -c $T/none -i $T/tasks.shard", "none: cannot open");
    refused(1, "./evaluate -c $T/random.bin -i $T/random.bin", "this is a checkpoint, expected a record shard");
    refused(1, "./evaluate -c $T/random.bin -i /dev/null", "this is an empty file");
    refused(1, "echo hello | ./evaluate -c $T/random.bin -i -", "standard input: this is text; make a shard of it");
    refused(1, "./evaluate -c $T/random.bin -i $T/pairs.shard", "a shard of kind preference, expected chat or prompt");
    refused(1, "./evaluate -c $T/random.bin -i $T/empty.shard", "the shard is empty");
    refused(1, "./evaluate -c $T/random.bin -i $T/nothing.bin", "the shard is empty");
    refused(1, "./evaluate -c $T/random.bin -i $T/nothing.shard", "no record has a token to predict");
    refused(1, "./evaluate -c $T/small.bin -i $T/tasks.shard", "its vocabulary of 260 does not fit the model's 100");
    refused(1, "./evaluate -c $T/small.bin -i $T/text.bin", "expected below the vocabulary of 100");
    refused(1, "head -c 1100 $T/tasks.shard | ./evaluate -c $T/random.bin -i -", "standard input: ");
    refused(1, "head -c 1100 $T/text.bin | ./evaluate -c $T/random.bin -i -", "standard input: ");
    /* the tokenizer of other.bin has all tokens of the shard's, and one more */
    run(0, "./evaluate -c $T/other.bin -i $T/tasks.shard");
    refused(1, "./evaluate -c $T/random.bin -i $T/strange.shard --completions $T/kept", "that can be verified");
    refused(1, "./evaluate -c $T/random.bin -i $T/strange.shard --completions $T/kept --reward verify",
            "task 'strange' has no verifier");
    refused(1, "./evaluate -c $T/random.bin -i $T/long.shard", "all 1 prompts are longer than 39 tokens");
    refused(1,
            "./evaluate -c $T/random.bin -i $T/strange.shard --num-samples 2 --reward-cmd false --completions $T/kept",
            "false");
    refused(1, "./evaluate -c $T/random.bin -i $T/tasks.shard --num-samples 2 --completions $T/no/file", "no/file");
    refused(1, "./evaluate -c $T/random.bin -i $T/tasks.shard --completions $T/kept --compute-curve $T/no/file",
            "no/file");
    run(1, "./evaluate -c $T/random.bin -i $T/tasks.shard --num-samples 2 --completions /dev/full");
    assert_holds(said, "/dev/full: cannot write: No space left");
    run(1, "./evaluate -c $T/random.bin -i $T/chat.shard > /dev/full");
    assert_holds(said, "standard output: cannot write: No space left");
    /* a signal: one line, nothing on standard output, no file */
    put("kept", "earlier");
    const int before = files_count();
    run(1, "./evaluate -c $T/random.bin -i $T/tasks.shard --num-samples 512 --completions $T/kept -g 39 & pid=$!; "
           "until ls $T/kept.*.tmp >&2; do sleep 0.01; done; kill -TERM $pid; wait $pid");
    assert_holds(said, "stopped by a signal");
    assert_string_equal(out, "");
    files_assert_content(files_path("kept"), "earlier", 7);
    assert_int_equal(files_count(), before);
}

static int setup(void **state) {
    Error e;
    if (models_setup(state)) return 1;
    chance = models_random(CONTEXT);
    models_save(&chance, "random.bin", false, NULL);
    models_save(&chance, "bare.bin", true, NULL);
    Model small;
    const ModelConfig c = gpt2_config(1, 1, 16, 100, 32);
    assert_true(model_new(&small, &c, backend_cpu(), models_device, false, &e));
    model_init(&small, 1);
    models_save(&small, "small.bin", true, NULL);
    model_free(&small);
    ModelFile f = {.lineage = json_array()};
    Tokenizer other;
    assert_true(tokenizer_bytes(&other, &e) && tokenizer_add_special(&other, "<|more|>", &e));
    const ModelConfig wider = gpt2_config(1, 1, 16, 300, 32);
    assert_true(model_new(&small, &wider, backend_cpu(), models_device, false, &e));
    model_init(&small, 1);
    assert_true(tokenizer_store(&other, &f.tokenizer, &f.tokenizer_bytes, &e));
    assert_true(model_save(&small, &f, files_path("other.bin"), false, NULL, NULL, &e));
    model_file_free(&f), tokenizer_free(&other), model_free(&small);

    ShardWriter w = models_shard("empty.shard", RECORD_PROMPT, "plain");
    models_commit(&w);
    w = models_shard("strange.shard", RECORD_PROMPT, "plain");
    models_add_prompt(&w, "a", "strange", "b", "");
    models_commit(&w);
    w = models_shard("long.shard", RECORD_PROMPT, "plain");
    models_add_prompt(&w, "a prompt that is longer than the context of 40 tokens", "exact", "b", "");
    models_commit(&w);
    w = models_shard("nothing.shard", RECORD_CHAT, "plain");
    uint8_t mask[] = {0, 0};
    assert_true(shard_add(&w, &(Record){.tokens = (int32_t[]){1, 2}, .count = 2, .mask = mask}, &e));
    models_commit(&w);
    w = models_shard("pairs.shard", RECORD_PREFERENCE, "plain");
    const Record pair = {
        .tokens = (int32_t[]){1, 2, 3}, .count = 3, .prompt = 1, .completions = 2, .length = (int32_t[]){1, 1}};
    assert_true(shard_add(&w, &pair, &e));
    models_commit(&w);
    assert_true(tokens_write(files_path("nothing.bin"), (int32_t[]){1}, 1, (TokenMeaning){0}, &e));
    return 0;
}

static int teardown(void **state) {
    model_free(&chance);
    return models_teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(pass_and_best_are_means_over_subsets),
                                       cmocka_unit_test(lost_samples_do_not_count),
                                       cmocka_unit_test(majorities),
                                       cmocka_unit_test(votes_are_means_over_subsets),
                                       cmocka_unit_test(certainty),
                                       cmocka_unit_test(wilson),
                                       cmocka_unit_test(loss_of_chats),
                                       cmocka_unit_test(loss_of_tokens),
                                       cmocka_unit_test(figures_of_tasks),
                                       cmocka_unit_test(figures_of_files),
                                       cmocka_unit_test(options_are_ranked),
                                       cmocka_unit_test(bad_input)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
