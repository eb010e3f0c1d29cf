/* sample_report.c - reports from invented numbers, for inspecting the layout without a run.
 *
 *     make build/sample_report
 *     build/sample_report grpo|sft|long|one|empty|nasty DIRECTORY
 *
 * grpo and sft resemble runs of those trainers; long has 20000 steps; one has a single step; empty has none; nasty
 * contains input that must not break the page: markup, broken UTF-8, gaps, infinities, huge and tiny values, in every
 * section and widget (dev/check_pages.py opens it in a browser).
 */
#include "../llmc/report/metrics.h"
#include "../llmc/base/random.h"

static double noise(Random *r, double size) { return size * random_normal(r); }

static void open_run(Metrics *m, const char *program, const char *dir) {
    Error e;
    char jsonl[4096], board[4096], report[4096];
    snprintf(jsonl, sizeof jsonl, "%s/metrics.jsonl", dir);
    snprintf(board, sizeof board, "%s/tb", dir);
    snprintf(report, sizeof report, "%s/report.html", dir);
    if (!metrics_open(m, program, jsonl, board, report, -1, &e)) die("%s", e.text);
}

static void step(Metrics *m, int64_t at) {
    Error e;
    if (!metrics_step(m, at, &e)) die("%s", e.text);
}

static void options(Metrics *m) {
    static const char *const rows[][2] = {{"Files", NULL},
                                          {"checkpoint", "demo/sft.bin"},
                                          {"input", "demo/add.shard"},
                                          {"output", "demo/grpo.bin"},
                                          {"metrics", "demo/metrics.jsonl"},
                                          {"Model", NULL},
                                          {"layers", "6"},
                                          {"heads", "6"},
                                          {"width", "384"},
                                          {"vocab", "260"},
                                          {"context", "128"},
                                          {"dtype", "float32"},
                                          {"Sampling", NULL},
                                          {"prompts", "8"},
                                          {"samples", "8"},
                                          {"max-tokens", "16"},
                                          {"temperature", "1"},
                                          {"top-k", "0"},
                                          {"top-p", "1"},
                                          {"min-p", "0"},
                                          {"Objective", NULL},
                                          {"loss", "dapo"},
                                          {"scale-rewards", "group"},
                                          {"clip-low", "0.2"},
                                          {"clip-high", "0.28"},
                                          {"beta", "0"},
                                          {"num-iterations", "1"},
                                          {"importance", "token"},
                                          {"Optimiser", NULL},
                                          {"learning-rate", "0.0003"},
                                          {"warmup", "10"},
                                          {"schedule", "cosine"},
                                          {"weight-decay", "0.01"},
                                          {"clip", "1"},
                                          {"steps", "300"},
                                          {"seed", "1234"},
                                          {"reward-cmd", ""}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) metrics_config(m, rows[i][0], rows[i][1]);
}

static void grpo(Metrics *m, int64_t steps) {
    Random r = random_start(7, 1);
    metrics_header(m, "6 layers, width 384, 6 heads, 10.8 million parameters, float32, on 2 cores");
    options(m);
    for (int64_t i = 1; i <= steps; i++) {
        const double t = (double)i / (double)steps, skill = 0.2 + 0.74 / (1 + exp(-9 * (t - 0.35)));
        metrics_set(m, "loss", noise(&r, 0.02));
        metrics_set(m, "grad_norm", 0.6 + 0.3 * exp(-5 * t) + fabs(noise(&r, 0.12)));
        metrics_set(m, "learning_rate", 3e-4 * (i < 10 ? (double)i / 10 : 0.5 * (1 + cos(3.14159 * t))));
        metrics_set(m, "reward", fmin(1.1, fmax(0, 1.1 * skill + noise(&r, 0.07))));
        metrics_set(m, "reward_std", 0.5 * sqrt(skill * (1 - skill)) + fabs(noise(&r, 0.03)));
        metrics_set(m, "frac_reward_zero_std", fmin(1, fmax(0, t * t * 0.7 + noise(&r, 0.05))));
        metrics_set(m, "rewards/verify/mean", fmin(1, fmax(0, skill + noise(&r, 0.07))));
        metrics_set(m, "rewards/format/mean", fmin(1, 0.8 + 0.2 * t + noise(&r, 0.02)));
        metrics_set(m, "kl", 1e-5 * exp(8 * t) * exp(noise(&r, 0.3)));
        metrics_set(m, "entropy", 0.9 * exp(-2.2 * t) + 0.06 + fabs(noise(&r, 0.03)));
        metrics_set(m, "clip_ratio/low_mean", fabs(noise(&r, 0.004)));
        metrics_set(m, "clip_ratio/high_mean", fabs(noise(&r, 0.006)));
        metrics_set(m, "clip_ratio/region_mean", fabs(noise(&r, 0.009)));
        const double length = 6 + 2 * sin(5 * t) + noise(&r, 0.3);
        metrics_set(m, "completions/mean_length", length);
        metrics_set(m, "completions/min_length", floor(length - 2 - fabs(noise(&r, 1))));
        metrics_set(m, "completions/max_length", ceil(length + 4 + fabs(noise(&r, 2))));
        metrics_set(m, "completions/clipped_ratio", fmax(0, 0.08 * exp(-6 * t) + noise(&r, 0.01)));
        metrics_set(m, "sampling/sampling_logp_difference/mean", 1e-7 * (1 + fabs(noise(&r, 0.4))));
        metrics_set(m, "sampling/sampling_logp_difference/max", 2e-6 * (1 + fabs(noise(&r, 0.8))));
        metrics_set(m, "step_time", 0.42 + fabs(noise(&r, 0.03)) + (i % 25 ? 0 : 0.35));
        metrics_set(m, "tokens_per_second", 14500 + noise(&r, 600));
        metrics_set(m, "num_tokens", (double)i * 64 * 18);
        if (i % (steps / 12) == 0 || i == 1) {
            metrics_set(m, "eval_accuracy", fmin(1, fmax(0, skill - 0.03 + noise(&r, 0.015))));
            metrics_set(m, "eval_pass@8", fmin(1, 0.55 + 0.43 * t + noise(&r, 0.01)));
        }
        step(m, i);
        metrics_progress(m, i, steps, "reward 0.71");
    }
    for (int i = 0; i < 11; i++) {
        char prompt[64], answer[32], wrong[64];
        const int a = 123 + 77 * i % 800, b = 457 + 31 * i % 500;
        snprintf(prompt, sizeof prompt, "%d+%d=", a, b);
        snprintf(answer, sizeof answer, "%d", a + b);
        snprintf(wrong, sizeof wrong, "%d", a + b + (i % 3 ? 10 * (i % 4 + 1) : 0));
        metrics_sample(m, "before", prompt, i == 4 ? "" : wrong, answer, i % 3 ? 0 : 1);
        metrics_sample(m, "step 150", prompt, i % 2 ? wrong : answer, answer, i % 2 ? 0 : 1);
        metrics_sample(m, "after", prompt, i == 7 ? wrong : answer, answer, i == 7 ? 0 : 1);
    }
    const char *story =
        "Ann has 12 boxes with 7 pens each. She gives 19 pens away and buys 4 more boxes. How many pens has she?";
    metrics_sample(m, "before", story, "12 boxes of 7 are 84 pens.\n84 - 19 = 65\nShe buys 4 more, so 69.\n#### 69",
                   "93", 0.1);
    metrics_sample(m, "before", story, "12 * 7 = 84 and 84 - 19 = 75\n#### 75", "93", 0.1);
    metrics_sample(m, "after", story,
                   "12 boxes of 7 are 84 pens.\n84 - 19 = 65\n4 boxes of 7 are 28 pens.\n65 + 28 = 93\n#### 93", "93",
                   1.1);
    metrics_sample(m, "after", story, "12 * 7 = 84, 4 * 7 = 28\n84 + 28 - 19 = 93, without the mark", "93", 0.7);
    metrics_final(m, "Held-out greedy accuracy", "19.4 %", "92.8 %");
    metrics_final(m, "Held-out pass@8", "55.1 %", "98.2 %");
    metrics_final(m, "Mean reward of samples", "0.213", "1.021");
    metrics_final(m, "Mean completion length, tokens", "6.2", "5.4");
    metrics_final(m, "KL to the fine-tuned model, nats per token", NULL, "0.031");
    metrics_final(m, "Speed, tokens/s", NULL, "14 512");
}

static void sft(Metrics *m) {
    Random r = random_start(9, 1);
    options(m);
    for (int64_t i = 1; i <= 400; i++) {
        const double t = (double)i / 400, loss = 0.35 + 5.1 * exp(-12 * t);
        metrics_set(m, "loss", loss + noise(&r, 0.05));
        metrics_set(m, "mean_token_accuracy", 1 - 0.16 * loss + noise(&r, 0.01));
        metrics_set(m, "entropy", loss * 0.9);
        metrics_set(m, "grad_norm", 1.2 + noise(&r, 0.2));
        metrics_set(m, "learning_rate", 1e-3 * fmin(1, (double)i / 40) * (1 - t));
        metrics_set(m, "epoch", 3 * t);
        metrics_set(m, "num_tokens", (double)i * 8192);
        metrics_set(m, "step_time", 0.2 + fabs(noise(&r, 0.01)));
        if (i % 50 == 0) metrics_set(m, "eval_loss", loss + 0.12 + 0.25 * t);
        step(m, i);
    }
    metrics_sample(m, "step 100", "The capital of France is", " the the the", NULL, NAN);
    metrics_sample(m, "step 400", "The capital of France is", " Paris.", NULL, NAN);
}

/* A text that is markup, ends a script, and turns the direction of what follows. */
#define EVIL                                                                                                           \
    "</script></style><script>alert('text')</script><img src=x onerror=alert('image')><!-- <svg onload=alert('svg')> " \
    "\xe2\x80\xae&lt;\xe2\x80\xa8\x1b[31m"

/* Pairs, solutions, a mixture and rollouts of several turns with such texts. */
static void hostile(Metrics *m) {
    Error e;
    metrics_pair(m, "before", EVIL, EVIL "a", EVIL "b", 0.5, -0.25);
    metrics_pair(m, "after", EVIL, EVIL "a", EVIL "b", 1.5, -1.25);
    for (int after = 0; after < 2; after++)
        metrics_solution(m, after ? "after" : "before", EVIL,
                         json_pack("[{s:s, s:i, s:f}, {s:s, s:f, s:f}]", "text", EVIL, "label", 1, "score", 0.5 + after,
                                   "text", EVIL "2", "label", 0.25, "score", -0.5 - after));
    if (!metrics_open_rollouts(m, NULL, "1", &e)) die("%s", e.text);
    for (int at = 0; at < 8; at++) {
        json_t *samples = json_array();
        for (int k = 0; k < 4; k++)
            json_array_append_new(
                samples,
                json_pack(
                    "{s:s, s:s, s:[s, s, s], s:[i, i, i], s:[f, n, f], s:[f, n, f], s:[f, n, f], s:f, s:{s:f, s:f}, "
                    "s:f, s:f, s:f, s:b, s:s, s:i, s:[[f, f], [f, f]]}",
                    "id", "1.0", "text", EVIL, "tokens", EVIL, EVIL "result", "x", "drawn", 1, 1, 1, "logp", -0.1, -2.5,
                    "ref_logp", -0.2, -1.5, "entropy", 0.3, 0.1, "advantage", k - 1.5, "rewards", EVIL, 0.5 * k, "b",
                    1.0, "reward", 0.1 * at + k, "gold", k - 0.2 * at, "kl", 0.2 * at, "right", k > 1, "stop", EVIL,
                    "turns", 2, "turn_times", 0.0, 0.5, 1.25, 2.0));
        metrics_rollout(m, json_pack("{s:i, s:s, s:i, s:s, s:s, s:o}", "step", at, "kind", "fixed", "prompt_id", 1,
                                     "prompt", EVIL, "answer", EVIL, "samples", samples));
        metrics_rollout(
            m, json_pack("{s:s, s:i, s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:[f, f], s:[f, f], s:[[i, i, i], [i, i, "
                         "i]], s:[i, i, i], s:[{s:s, s:s, s:f, s:f}]}",
                         "record", "clip", "step", at, "unit", "token", "loss", "grpo", "epsilon", 0.2, "epsilon_high",
                         0.2, "low", -0.223, "high", 0.182, "share", 0.25, "edges", -0.223, 0.182, "sizes", 0.5, 1.0,
                         "counts", 1, 4, 0, 0, 4, 2, "zero", 0, 1, 0, "tokens", "text", EVIL, "before", EVIL,
                         "log_ratio", 0.4, "advantage", 1.0));
    }
}

static void nasty(Metrics *m) {
    metrics_header(m, "<b>bold?</b> & \"quoted\" \xff\xfe broken \xe2\x82 text");
    metrics_config(m, "prompt", "</dd></style><script>alert(1)</script>");
    metrics_config(
        m, "a-long-value",
        "/very/long/path/without/any/spaces/that/must/wrap/somewhere/because/it/is/too/long/to/fit/a/column/model.bin");
    for (int64_t i = 1; i <= 60; i++) {
        metrics_set(m, "loss", i > 20 && i < 30 ? NAN : i == 40 ? INFINITY : 1.0 / (double)i);
        metrics_set(m, "huge", i % 2 ? 1e300 : -1e300);
        metrics_set(m, "tiny", 1e-300 * (double)i);
        metrics_set(m, "constant", 0.25);
        metrics_set(m, "zero", 0);
        metrics_set(m, "never", NAN);
        metrics_set(m, "alone", i == 30 ? 3 : NAN);
        metrics_set(m, "</script><b>key'\"", (double)i);
        metrics_set(m, "negative", -1e6 + (double)i);
        metrics_set(m, "accuracy", (double)(i % 7) / 7);
        metrics_set(m, "objective/kl", 0.01 * (double)i);
        metrics_set(m, "objective/scores", 0.1 * sqrt((double)i));
        metrics_set(m, "objective/gold", 0.1 * sqrt((double)i) - 0.0001 * (double)(i * i));
        metrics_set(m, "mix/</script><b>/share", i < 10 ? 1 : 0.6);
        metrics_set(m, "mix/b/share", i < 10 ? 0 : 0.4);
        step(m, i);
    }
    char *bytes = (char *)xmalloc(20001), control[40] = "";
    for (int i = 0; i < 20000; i++) bytes[i] = (char)(1 + (i * 37) % 255);
    bytes[20000] = 0;
    for (int i = 1; i < 32; i++) control[i - 1] = (char)i;
    metrics_sample(m, "before", "</pre><script>alert(2)</script>", bytes, "x", 0);
    metrics_sample(m, "after", "</pre><script>alert(2)</script>", control, "<>", 1);
    metrics_sample(m, "after", "\xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d \xe2\x80\xae reversed \xf0\x9f\x98\x80",
                   "\xe2\x80\xae abc", "abc", INFINITY);
    free(bytes);
    hostile(m);
}

int main(int argc, char **argv) {
    if (argc != 3) usage_error("expected a kind (grpo, sft, long, one, empty, nasty) and a directory");
    Metrics m;
    Error e;
    const char *kind = argv[1];
    open_run(&m, !strcmp(kind, "sft") ? "train_sft" : !strcmp(kind, "nasty") ? "train_dpo" : "train_grpo", argv[2]);
    if (!strcmp(kind, "nasty")) { /* with the options that the widget of the pairs needs */
        metrics_describe(&m, "0");
        metrics_fact(&m, "args", json_pack("{s:s, s:s, s:s}", "beta", "0.5", "loss-type", "sigmoid", "seed", EVIL));
    }
    if (!strcmp(kind, "grpo")) grpo(&m, 300);
    else if (!strcmp(kind, "long")) grpo(&m, 20000);
    else if (!strcmp(kind, "sft")) sft(&m);
    else if (!strcmp(kind, "nasty")) nasty(&m);
    else if (!strcmp(kind, "one")) {
        metrics_set(&m, "loss", 0.7);
        metrics_set(&m, "reward", 0.4);
        step(&m, 1);
    } else if (strcmp(kind, "empty")) usage_error("%s: unknown kind", kind);
    if (!metrics_close(&m, &e)) die("%s", e.text);
    return 0;
}
