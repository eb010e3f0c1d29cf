/* test_test_time.c - test-time compute: budget forcing against a reference that knows nothing of the engine, and against
 * plain samples. Needs ./generate and ./evaluate. */
#include "../llmc/base/error.h"       /* Error */
#include "../llmc/base/random.h"      /* random_uniform */
#include "../llmc/model/model.h"      /* Model, model_free */
#include "../llmc/model/model_text.h" /* ModelText */
#include "../llmc/rollout/rollout.h"  /* Sampling, RolloutRequest, Completion, Rollout, ... */
#include "../llmc/rollout/thinking.h" /* ThinkingOptions, THINKING_INFINITE, Thinking, thinking_budgets, ... */
#include "models.h"                   /* refused, MODELS_VOCAB, models_argmax, models_random, ... */
#include "shell.h"                    /* assert_holds, run, put */

enum { CONTEXT = 120, PROMPT = 5, NEW = 100, REQUESTS = 6, SAMPLES = 3, ALL = REQUESTS * SAMPLES };

/* ---- a reference ----------------------------------------------------------------------------------------------- */

/* The token at which the cumulative distribution after n tokens exceeds the uniform number of (stream, index), from an
 * uncached pass over all tokens, in double. */
static int32_t draw(const Model *m, const int32_t *ids, int n, double temperature, uint64_t seed, uint64_t stream,
                    uint64_t index) {
    float *logits = models_logits(m, ids, n);
    const float *z = logits + (size_t)(n - 1) * MODELS_VOCAB;
    const double u = random_uniform(seed, stream, index);
    double sum = 0, below = 0;
    int32_t v = 0;
    for (int k = 0; k < MODELS_VOCAB; k++) sum += exp((z[k] - z[models_argmax(z)]) / temperature);
    for (; v < MODELS_VOCAB - 1; v++) {
        below += exp((z[v] - z[models_argmax(z)]) / temperature) / sum;
        if (below > u) break;
    }
    free(logits);
    return v;
}

typedef struct Forced {
    int32_t ids[CONTEXT];
    uint8_t drawn[CONTEXT];
    int n, thought, waits; /* n, thought: with the prompt */
    bool finished;
} Forced;

static void insert(Forced *f, const char *text) {
    for (; *text; text++) {
        f->drawn[f->n] = 0;
        f->ids[f->n++] = (unsigned char)*text;
    }
}

/* Budget forcing as section 3 of s1 says it, of byte tokens. end: the character that ends thinking; stop: the token that
 * ends everything. */
static void force(const Model *m, const RolloutRequest *q, int sample, const Sampling *s, int budget, int ignore,
                  char end, int32_t stop, int answer, Forced *f) {
    const uint64_t stream = s->stream + q->id + (uint64_t)sample;
    int removed = 0, last = -1;
    char closing[] = {end, '=', 0};
    memcpy(f->ids, q->prompt, (size_t)q->prompt_len * sizeof *f->ids);
    f->n = q->prompt_len;
    while (f->n - q->prompt_len < budget) {
        last = draw(m, f->ids, f->n, s->temperature, s->seed, stream, (uint64_t)(f->n + removed));
        if (last == stop || last == end) {
            if (f->waits == ignore || f->n - q->prompt_len + 2 >= budget) break;
            f->waits++;
            removed++;
            insert(f, "Wt");
        } else {
            f->drawn[f->n] = 1;
            f->ids[f->n++] = last;
        }
        last = -1;
    }
    f->thought = f->n;
    if (last == end) {
        f->drawn[f->n] = 1;
        f->ids[f->n++] = end;
    } else {
        removed += last == stop;
        insert(f, closing);
    }
    for (int k = 0; k < answer && !f->finished; k++) {
        f->drawn[f->n] = 1;
        f->ids[f->n] = draw(m, f->ids, f->n, s->temperature, s->seed, stream, (uint64_t)(f->n + removed));
        f->finished = f->ids[f->n++] == stop;
    }
}

/* ---- the engine ------------------------------------------------------------------------------------------------ */

typedef struct Work {
    int32_t prompt[REQUESTS][PROMPT];
    RolloutRequest request[REQUESTS];
    Completion out[ALL];
} Work;

static void work_prompts(Work *w, int samples) {
    for (int i = 0; i < REQUESTS; i++) {
        for (int k = 0; k < PROMPT; k++) w->prompt[i][k] = 'a' + (7 * i + 3 * k) % 26;
        w->request[i] = (RolloutRequest){.prompt = w->prompt[i],
                                         .prompt_len = PROMPT - i % 3,
                                         .samples = samples,
                                         .id = (uint64_t)(i * samples),
                                         .out = w->out + i * samples};
    }
}

static void work_free(Work *w) {
    for (int i = 0; i < ALL; i++) completion_free(&w->out[i]);
}

static void work_run(const Model *m, int slots, const Sampling *s, const RolloutTurns *turns, Work *w) {
    Error e;
    Rollout r;
    if (!rollout_new(&r, m, slots, PROMPT, CONTEXT, &e)) fail_msg("%s", e.text);
    r.turns = turns;
    if (!rollout_run(&r, s, w->request, REQUESTS, NULL, NULL, &e)) fail_msg("%s", e.text);
    rollout_free(&r);
}

static Sampling sampling(int max_new, int32_t stop) {
    Sampling s = sampling_default();
    s.temperature = 0.8f;
    s.max_new = max_new;
    s.seed = 11;
    s.stop[s.stops++] = stop;
    return s;
}

static ModelText text_of_bytes(void) { return (ModelText){.present = true, .tokenizer = models_bytes}; }

static void forced_equals_the_reference(void **state) {
    (void)state;
    Error e;
    Model m = models_random(CONTEXT);
    const ModelText text = text_of_bytes();
    int waits = 0, cut = 0, own = 0;
    static const int settings[][3] = {{80, 0, SAMPLES}, {50, 2, SAMPLES}, {70, 4, 1}, {9, 1, SAMPLES}};
    for (size_t k = 0; k < 4; k++) {
        const int budget = settings[k][0], ignore = settings[k][1], samples = settings[k][2];
        const ThinkingOptions o = {.wait = "Wt", .end = "n", .answer = "=", .ignore = ignore};
        Sampling s = sampling(7, 'e');
        Thinking x;
        Work w = {0}, other = {0};
        if (!thinking_open(&x, &o, budget, &text, &s, CONTEXT, PROMPT, &e)) fail_msg("%s", e.text);
        s.max_new = x.new_max;
        work_prompts(&w, samples);
        work_prompts(&other, samples);
        work_run(&m, 5, &s, &x.turns, &w);
        work_run(&m, 64, &s, &x.turns, &other);
        for (int i = 0; i < REQUESTS * samples; i++) {
            const RolloutRequest *q = &w.request[i / samples];
            const Completion *c = &w.out[i];
            Forced f = {0};
            force(&m, q, i % samples, &s, budget, ignore, 'n', 'e', 7, &f);
            assert_int_equal(c->count, f.n - q->prompt_len);
            assert_memory_equal(c->tokens, f.ids + q->prompt_len, (size_t)c->count * sizeof(int32_t));
            assert_memory_equal(c->trajectory->drawn, f.drawn + q->prompt_len, (size_t)c->count);
            assert_int_equal(c->trajectory->thought, f.thought - q->prompt_len);
            assert_int_equal(c->trajectory->waits, f.waits);
            assert_int_equal(c->finished, f.finished);
            assert_true(c->trajectory->thought <= budget);
            assert_int_equal(other.out[i].count, c->count);
            assert_memory_equal(other.out[i].tokens, c->tokens, (size_t)c->count * sizeof(int32_t));
            waits += f.waits;
            cut += c->trajectory->thought == budget;
            own += f.drawn[f.thought];
        }
        work_free(&w), work_free(&other), thinking_close(&x);
    }
    if (waits < 10 || cut < 5 || own < 5) fail_msg("%d ends ignored, %d thoughts cut, %d ended", waits, cut, own);
    model_free(&m);
}

/* Without a limit and without ignored ends the completions are the plain ones, to the last bit. */
static void infinite_is_plain(void **state) {
    (void)state;
    Error e;
    Model m = models_random(CONTEXT);
    const ModelText text = text_of_bytes();
    const ThinkingOptions o = {.wait = "Wt", .end = "e", .answer = "="};
    Sampling s = sampling(NEW, 'n');
    Thinking x;
    Work plain = {0}, forced = {0};
    int marked = 0;
    work_prompts(&plain, SAMPLES);
    work_prompts(&forced, SAMPLES);
    if (!thinking_open(&x, &o, THINKING_INFINITE, &text, &s, CONTEXT, PROMPT, &e)) fail_msg("%s", e.text);
    work_run(&m, 4, &s, NULL, &plain);
    work_run(&m, 4, &s, &x.turns, &forced);
    for (int i = 0; i < ALL; i++) {
        assert_int_equal(plain.out[i].count, forced.out[i].count);
        assert_int_equal(plain.out[i].finished, forced.out[i].finished);
        assert_memory_equal(plain.out[i].tokens, forced.out[i].tokens, (size_t)plain.out[i].count * sizeof(int32_t));
        assert_memory_equal(plain.out[i].logp, forced.out[i].logp, (size_t)plain.out[i].count * sizeof(float));
        assert_int_equal(completion_drawn(&forced.out[i]), forced.out[i].count);
        marked += forced.out[i].trajectory->thought < forced.out[i].count - 1;
    }
    assert_true(marked > 2);
    work_free(&plain), work_free(&forced), thinking_close(&x), model_free(&m);
}

/* Position p is followed by script[p]: an end of two tokens is removed whole, and is kept when it is not ignored. */
static void an_end_of_several_tokens(void **state) {
    (void)state;
    static const char script[] = "_abc##defg##hij";
    int32_t ids[32];
    for (int i = 0; script[i + 1]; i++) ids[i] = (unsigned char)script[i + 1]; /* the prompt is one token */
    Model m = models_scripted(64, ids, NULL, (int)strlen(script) - 1);
    models_save(&m, "script.bin", false, NULL);
    model_free(&m);
    put("one.jsonl", "{\"prompt\":\"_\"}\n");
#define FORCE "./generate -c $T/script.bin --raw --temperature 0 -i $T/one.jsonl --think-end '##' --think-tokens "
    run(0, FORCE "inf -g 10");
    assert_holds(out, "\"completion\":\"abc##defg##hij\"");
    assert_holds(out, "\"think_tokens\":3,\"ignored_ends\":0,\"drawn\":[15],\"stop\":\"completed\"");
    /* abc, ## removed, "!" is at position 4, after which comes script[5]: #defg## is the rest of the thought */
    run(0, FORCE "30 -g 10 --ignore-end 1 --wait-text '!'");
    assert_holds(out, "\"completion\":\"abc!#defg##hij\"");
    assert_holds(out, "\"think_tokens\":9,\"ignored_ends\":1,\"drawn\":[3,1,11],\"stop\":\"completed\"");
    /* the budget runs out after "ab"; "##=" is at positions 3 to 5, after which comes script[6] */
    run(0, FORCE "2 -g 10 --answer-text '='");
    assert_holds(out, "\"completion\":\"ab##=defg##hij\"");
    assert_holds(out, "\"think_tokens\":2,\"ignored_ends\":0,\"drawn\":[2,3,10],\"stop\":\"completed\"");
    run(0, FORCE "2 -g 8 --answer-text '='");
    assert_holds(out, "\"completion\":\"ab##=defg##hi\"");
    assert_holds(out, "\"finished\":false");
    assert_holds(out, "\"drawn\":[2,3,8],\"stop\":\"max_tokens\"");
#undef FORCE
}

/* Section 3.2: of the budgets 1, 3 and 5 with accuracies 0, 0.4 and 0.6, the slopes are 0.2, 0.15 and 0.1. */
static void scaling(void **state) {
    (void)state;
    const ThinkingRun run[] = {{1, 1, 0, 1}, {3, 3, 0.4, 1}, {5, 5, 0.6, 1}};
    assert_near(thinking_scaling(run, 3), 0.15, 1e-12);
    assert_true(isnan(thinking_scaling(run, 1)));
}

static void budgets(void **state) {
    (void)state;
    Error e;
    int32_t b[THINKING_BUDGETS];
    assert_int_equal(thinking_budgets(&(ThinkingOptions){.tokens = "1,20,inf"}, b, &e), 3);
    assert_true(b[0] == 1 && b[1] == 20 && b[2] == THINKING_INFINITE);
    static const char *const bad[] = {"",         "0",  "-1", "5,5", "7,3",        "inf,3",
                                      "infinite", "3,", ",3", "3x",  "99999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(thinking_budgets(&(ThinkingOptions){.tokens = bad[i]}, b, &e), 0);
}

static void refusals(void **state) {
    (void)state;
#define GENERATE "./generate -c $T/script.bin --raw -i $T/one.jsonl -o $T/kept "
    refused(2, GENERATE "--ignore-end 1", "--ignore-end: used only with --think-tokens");
    refused(2, GENERATE "--think-tokens 5 --wait-text x", "--wait-text: used only with --ignore-end");
    refused(2, GENERATE "--think-tokens 5,6 -g 9", "give one budget");
    refused(2, GENERATE "--think-tokens 5 --tools calculator", "give only one of them");
    refused(2, GENERATE "--think-tokens 60 -g 9", "fit the context of 64; lower --max-new-tokens or the budget");
    refused(2, GENERATE "--think-tokens 5 -g 9 --think-end ''", "the text is empty");
    refused(2, "./generate -c $T/script.bin --think-tokens 5 x", "--think-tokens: used only for JSON lines");
#undef GENERATE
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(forced_equals_the_reference),
                                       cmocka_unit_test(infinite_is_plain),
                                       cmocka_unit_test(an_end_of_several_tokens),
                                       cmocka_unit_test(scaling),
                                       cmocka_unit_test(budgets),
                                       cmocka_unit_test(refusals)};
    return cmocka_run_group_tests_name("test_time", tests, models_setup, models_teardown);
}
