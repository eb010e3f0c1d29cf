/* test_tool_mask.c - completions with calls of a tool against TRL's GRPOTrainer (golden/tool_mask.jsonl.zst, written by
 * dev/golden/golden_tools.py): their tokens, which of them were drawn, the advantages, and the losses over the drawn ones. */
#include "../llmc/base/error.h"           /* Error, die, xcalloc */
#include "../llmc/base/jsonl.h"           /* Jsonl, jsonl_close, jsonl_next, jsonl_open */
#include "../llmc/base/options.h"         /* option_choice_index */
#include "../llmc/loss/advantage.h"       /* AdvantageStats, SCALE_GROUP, advantage_group */
#include "../llmc/loss/policy.h"          /* PolicyBatch, IMPORTANCE_SEQUENCE, IMPORTANCE_TOKEN, ... */
#include "../llmc/loss/scalar.h"          /* LossMetric */
#include "../llmc/model/model_text.h"     /* ModelText, model_text_close */
#include "../llmc/rollout/rollout.h"      /* Completion, completion_drawn, completion_free */
#include "../llmc/rollout/trajectory.h"   /* Trajectory, trajectory_count, trajectory_free, trajectory_new, ... */
#include "../llmc/text/chat.h"            /* chat_stop_token, chat_template_parse */
#include "../llmc/text/jinja_chat.h"      /* jinja_chat_spec */
#include "../llmc/text/tokenizer.h"       /* tokenizer_add_special */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open */
#include "cpu_device.h"                   /* close_device, open_device_one_thread */
#include "golden.h"                       /* check_near */
#include "scripted.h"                     /* scripted_id, Scripted, assert_completion, scripted_close, ... */

/* LIMIT: --max-completion-length of golden_tools.py */
enum { LINES = 64, PROMPT = 700, GROUP = 4, COMPLETIONS = 8, LIMIT = 290, TOKENS = COMPLETIONS * LIMIT };

static json_t *line[LINES];
static int lines;

/* The value of a key, which must exist. */
static const json_t *value(const json_t *object, const char *key) {
    const json_t *found = json_object_get(object, key);
    if (!found) fail_msg("no field %s", key);
    return found;
}
static double real(const json_t *object, const char *key) { return json_number_value(value(object, key)); }
static const char *text(const json_t *object, const char *key) { return json_string_value(value(object, key)); }

static int setup(void **state) {
    Error e;
    Jsonl j;
    json_t *row = NULL;
    int more;
    if (!jsonl_open(&j, "tests/golden/tool_mask.jsonl.zst", false, &e)) die("%s", e.text);
    while ((more = jsonl_next(&j, &row, &e)) > 0) {
        assert_true(lines < LINES);
        line[lines++] = json_incref(row);
    }
    if (more < 0) die("%s", e.text);
    jsonl_close(&j);
    return open_device_one_thread(state);
}

static int teardown(void **state) {
    for (int i = 0; i < lines; i++) json_decref(line[i]);
    return close_device(state);
}

/* The completions of a template: two prompts, each with its group. */
typedef struct Set {
    const json_t *prompt[COMPLETIONS / GROUP], *completion[COMPLETIONS];
} Set;

static Set set_of(const char *template) {
    Set s = {0};
    int prompts = 0, completions = 0;
    bool mine = false;
    for (int i = 0; i < lines; i++) {
        const json_t *name = json_object_get(line[i], "template");
        if (name) mine = !strcmp(json_string_value(name), template);
        if (mine && name) s.prompt[prompts++] = line[i];
        if (mine && json_object_get(line[i], "mask")) s.completion[completions++] = line[i];
    }
    assert_int_equal(prompts, COMPLETIONS / GROUP);
    assert_int_equal(completions, COMPLETIONS);
    return s;
}

/* ---- the engine ------------------------------------------------------------------------------------------------ */

/* The tokens of turns, one after another; to be released. */
static json_t *tokens_of(const json_t *turns) {
    json_t *all = json_array();
    for (size_t i = 0; i < json_array_size(turns); i++) json_array_extend(all, json_array_get(turns, i));
    return all;
}

/* The tokenizer of the golden values and a published template. */
static ModelText model_text(const char *template) {
    Error e;
    Jsonl j;
    json_t *row = NULL;
    char *spec = NULL;
    ModelText t = {.present = true, .has_template = true};
    if (!jsonl_open(&j, "tests/golden/template.jsonl.zst", false, &e)) fail_msg("%s", e.text);
    while (!spec && jsonl_next(&j, &row, &e) > 0) {
        const char *name = json_string_value(json_object_get(row, "name"));
        if (name && !strcmp(name, template)) spec = jinja_chat_spec(text(row, "template"), NULL, "2026-03-05", &e);
    }
    jsonl_close(&j);
    if (!spec || !tokenizer_open(&t.tokenizer, "tests/golden/nanochat.json", &e) ||
        !tokenizer_add_special(&t.tokenizer, "<|im_start|>", &e) ||
        !tokenizer_add_special(&t.tokenizer, "<|im_end|>", &e) || !chat_template_parse(&t.chat, spec, &e))
        fail_msg("%s: %s", template, e.text);
    t.stop = chat_stop_token(&t.chat, &t.tokenizer);
    free(spec);
    return t;
}

/* Draws the turns of a set: the tokens and the mask of each completion are TRL's. */
static void assert_masks(const char *template) {
    const Set set = set_of(template);
    const json_t *prompt[COMPLETIONS / GROUP];
    json_t *script[COMPLETIONS];
    Completion completion[COMPLETIONS];
    Scripted s;
    ModelText t = model_text(template);
    int observed = 0, cut = 0;
    for (int i = 0; i < COMPLETIONS / GROUP; i++) prompt[i] = value(set.prompt[i], "prompt");
    for (int i = 0; i < COMPLETIONS; i++) script[i] = tokens_of(value(set.completion[i], "turns"));
    scripted_open(&s, &t, PROMPT, LIMIT);
    scripted_run(&s, prompt, (const json_t *const *)script, COMPLETIONS / GROUP, GROUP, completion);
    for (int i = 0; i < COMPLETIONS; i++) {
        const Completion *c = &completion[i];
        char what[80];
        snprintf(what, sizeof what, "%s, completion %d", template, i);
        assert_completion(c, value(set.completion[i], "ids"), value(set.completion[i], "mask"), what);
        observed += c->count - completion_drawn(c);
        cut += !c->finished;
    }
    assert_true(observed > 200 && cut == 3);
    for (int i = 0; i < COMPLETIONS; i++) {
        completion_free(&completion[i]);
        json_decref(script[i]);
    }
    scripted_close(&s);
    model_text_close(&t);
}

static void test_masks(void **state) {
    (void)state;
    assert_masks("qwen2_5");
    assert_masks("qwen3_training");
}

/* ---- losses ---------------------------------------------------------------------------------------------------- */

static void test_advantages(void **state) {
    (void)state;
    const Set set = set_of("qwen2_5");
    float reward[COMPLETIONS], advantage[COMPLETIONS];
    AdvantageStats stats;
    for (int i = 0; i < COMPLETIONS; i++) reward[i] = (float)real(set.completion[i], "reward");
    advantage_group(reward, COMPLETIONS / GROUP, GROUP, SCALE_GROUP, advantage, &stats);
    for (int i = 0; i < COMPLETIONS; i++)
        check_near(advantage[i], real(set.completion[i], "advantage"), 1, 1e-6, "advantage");
}

/* The tokens of the loss: the drawn ones, or, as with --state-masking false, all. */
typedef struct Tokens {
    Trajectory *y[COMPLETIONS];
    int32_t offset[COMPLETIONS + 1];
    uint8_t counts[COMPLETIONS];
    float advantage[COMPLETIONS], logp[TOKENS], old[TOKENS], ref[TOKENS], entropy[TOKENS];
    PolicyBatch batch;
} Tokens;

/* Sets the values of a field at the tokens of the loss. */
static void tokens_values(const Tokens *t, const Set *set, const char *key, float *to) {
    for (int i = 0, n = 0; i < COMPLETIONS; i++) {
        const json_t *x = value(set->completion[i], key);
        for (size_t k = 0; k < json_array_size(x); k++)
            if (t->y[i]->drawn[k]) to[n++] = (float)json_number_value(json_array_get(x, k));
    }
}

static Tokens *tokens_new(const Set *set, bool masked) {
    Tokens *t = xcalloc(1, sizeof *t);
    for (int i = 0; i < COMPLETIONS; i++) {
        const json_t *ids = value(set->completion[i], "ids"), *mask = value(set->completion[i], "mask");
        const int32_t n = (int32_t)json_array_size(ids);
        int32_t token[LIMIT];
        float logp[LIMIT] = {0};
        assert_true(n <= LIMIT);
        t->y[i] = trajectory_new(LIMIT);
        for (int32_t k = 0; k < n; k++) {
            token[k] = scripted_id(ids, (size_t)k);
            t->y[i]->drawn[k] = (uint8_t)scripted_id(mask, (size_t)k);
        }
        trajectory_count(t->y[i], token, n);
        const int32_t drawn = t->y[i]->drawn_count;
        if (!masked) trajectory_unmask(t->y[i], token, logp, n);
        assert_int_equal(t->y[i]->drawn_count, masked ? drawn : n);
        assert_int_equal(t->y[i]->drawn_count + t->y[i]->masked, drawn); /* the length of the completion */
        for (int32_t k = 0; k < n; k++) assert_int_equal(isnan(logp[k]), !masked && !scripted_id(mask, (size_t)k));
        t->offset[i + 1] = t->offset[i] + t->y[i]->drawn_count;
        t->counts[i] = 1;
        t->advantage[i] = (float)real(set->completion[i], "advantage");
    }
    tokens_values(t, set, "logp", t->logp);
    tokens_values(t, set, "old", t->old);
    tokens_values(t, set, "ref", t->ref);
    tokens_values(t, set, "entropy", t->entropy);
    t->batch = (PolicyBatch){.completions = COMPLETIONS,
                             .offset = t->offset,
                             .advantage = t->advantage,
                             .counts = t->counts,
                             .logp = t->logp,
                             .old_logp = t->old,
                             .ref_logp = t->ref,
                             .entropy = t->entropy};
    return t;
}

static void tokens_free(Tokens *t) {
    for (int i = 0; i < COMPLETIONS; i++) trajectory_free(t->y[i]);
    free(t);
}

/* A loss, its gradient and its metrics. TRL's gradient is 0 at tokens that are not in the loss. */
static void check_loss(const Tokens *t, const json_t *wanted) {
    static float dlogp[TOKENS], dentropy[TOKENS];
    const int kind = option_choice_index(POLICY_LOSS_CHOICES, text(wanted, "loss"));
    PolicyLossConfig config = policy_loss_config((PolicyLossKind)kind);
    config.importance = real(wanted, "importance") ? IMPORTANCE_SEQUENCE : IMPORTANCE_TOKEN;
    config.epsilon = 0.2;
    config.epsilon_high = real(wanted, "epsilon_high");
    config.beta = real(wanted, "beta");
    config.entropy_coef = real(wanted, "entropy_coef");
    config.max_completion_length = LIMIT;
    const PolicyNormaliser normaliser = policy_normaliser(t->offset, COMPLETIONS, t->counts, NULL);
    PolicyStats stats = policy_stats();
    const double loss = policy_loss(&config, &normaliser, &t->batch, dlogp, dentropy, &stats);
    check_near(loss, real(wanted, "value"), 1e-3, 1e-6, text(wanted, "loss"));
    double most = 0;
    for (int32_t k = 0; k < t->offset[COMPLETIONS]; k++) most = fmax(most, fabs((double)dlogp[k]));
    for (int32_t i = 0, at = 0; i < COMPLETIONS; i++) {
        const json_t *gradient = json_array_get(value(wanted, "dlogp"), (size_t)i);
        for (size_t k = 0; k < json_array_size(gradient); k++) {
            const double d = json_number_value(json_array_get(gradient, k));
            if (t->y[i]->drawn[k]) check_near(dlogp[at++], d, 0.1 * most, 1e-6, text(wanted, "loss"));
            else assert_true(d == 0);
        }
    }
    LossMetric metric[POLICY_METRICS];
    const int metrics = policy_metrics(&config, &stats, metric);
    int found = 0;
    for (int k = 0; k < metrics; k++) {
        const json_t *given = json_object_get(value(wanted, "metrics"), metric[k].name);
        if (!given) continue;
        check_near(metric[k].value, json_number_value(given), 0.01, 1e-6, metric[k].name);
        found++;
    }
    assert_true(found >= 3);
}

static void test_losses(void **state) {
    (void)state;
    const Set set = set_of("qwen2_5");
    int losses[2] = {0};
    for (int masked = 0; masked < 2; masked++) {
        Tokens *t = tokens_new(&set, masked);
        for (int i = 0; i < lines; i++) {
            if (!json_object_get(line[i], "loss") || json_is_true(value(line[i], "masked")) != masked) continue;
            check_loss(t, line[i]);
            losses[masked]++;
        }
        tokens_free(t);
    }
    assert_int_equal(losses[0], 2);
    assert_int_equal(losses[1], 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_masks), cmocka_unit_test(test_advantages),
                                       cmocka_unit_test(test_losses)};
    return cmocka_run_group_tests_name("tool_mask", tests, setup, teardown);
}
