/* test_trajectory.c - completions of several turns: the engine against uncached forward passes of the whole sequence, and
 * independence of slots, also of those that observe before they draw; the tokens of a training batch against those that were
 * drawn and observed; GAE, pairs and the cross-entropy of observations against loops from the formulas.
 *
 * TRAJECTORIES is the number of random trajectories whose log-probabilities in sampling and training are compared (300). */
#include "../llmc/base/error.h"               /* Error, xcalloc, xmalloc */
#include "../llmc/base/random.h"              /* random_below, Random, random_start, random_normal */
#include "../llmc/loss/gae.h"                 /* gae */
#include "../llmc/model/batch.h"              /* Batch */
#include "../llmc/model/config.h"             /* ModelConfig, gpt2_config */
#include "../llmc/model/micro_plan.h"         /* MicroPlan */
#include "../llmc/model/model.h"              /* Model, model_free, model_download, model_new, ... */
#include "../llmc/model/pack.h"               /* batch_free, batch_new, batch_clear, batch_sequence, ... */
#include "../llmc/model/tensors.h"            /* INIT_ONE, TENSOR_COUNT */
#include "../llmc/model/transformer.h"        /* ModelOutput, model_forward */
#include "../llmc/model/workspace.h"          /* Workspace, workspace_free, workspace_new */
#include "../llmc/records/completion_set.h"   /* CompletionSet, CompletionSlice, completion_set_add, ... */
#include "../llmc/records/pairs.h"            /* Pair */
#include "../llmc/rollout/rollout.h"          /* Completion, rollout_free, Rollout, RolloutSample, ... */
#include "../llmc/rollout/trajectory.h"       /* Trajectory, STOP_COMPLETED, STOP_MAX_TOKENS, ... */
#include "../llmc/train/credit.h"             /* Credit, CreditOptions, credit_backward, credit_begin, ... */
#include "../llmc/train/generation.h"         /* Generation, ScoredCompletion, generation_fill, GenerationSlice */
#include "../llmc/train/generation_options.h" /* GenerationOptions */
#include "cpu_device.h"                       /* B, D, close_device, open_device_one_thread */

enum { VOCAB = 29, CONTEXT = 1024, PROMPT = 20, REQUESTS = 24, NEW = 760, LONG = 640, STOP = 7 };

static Model random_model(double amplitude, uint64_t seed) {
    Error e;
    Model m;
    const ModelConfig c = gpt2_config(2, 4, 32, VOCAB, CONTEXT);
    if (!model_new(&m, &c, B, D, true, &e)) fail_msg("%s", e.text);
    Random r = random_start(seed, 0);
    float *host = xmalloc(m.parameters * sizeof *host);
    for (int i = 0; i < TENSOR_COUNT; i++)
        for (size_t k = m.tensor[i].offset; k < m.tensor[i].offset + m.tensor[i].size; k++)
            host[k] = (float)(amplitude * random_normal(&r)) + (m.tensor[i].init == INIT_ONE);
    B->weights_upload(D, m.weights, host, m.parameters);
    free(host);
    return m;
}

/* ---- an environment of random answers -------------------------------------------------------------------------- */

/* The answer to turn k of sample id is random, of random length, and comes after a random number of polls. */
typedef struct World {
    RolloutTurns turns;
    int most;       /* turns */
    uint64_t delay; /* stream of the delays: another order of answers, but the same answers */
    int waiting, ended, finished, longest;
    struct WorldSample {
        RolloutSample who;
        Trajectory *y;
        int polls;
        uint64_t id;
        bool first; /* waits before its first turn */
    } sample[8 * REQUESTS];
    int32_t ids[NEW];
} World;

static void world_park(World *w, const RolloutSample *who, Trajectory *y, bool first) {
    const uint64_t id = who->q->id + (uint64_t)who->sample;
    Random r = random_start(w->delay, id);
    w->sample[w->waiting++] = (struct WorldSample){*who, y, (int)random_below(&r, 30), id, first};
}

static bool world_turn(void *context, const RolloutSample *who, const Completion *c) {
    World *w = context;
    Trajectory *y = c->trajectory;
    assert_int_equal(c->tokens[c->count - 1], STOP);
    if (y->turns >= w->most) {
        y->stop = STOP_COMPLETED;
        return false;
    }
    world_park(w, who, y, false);
    return true;
}

/* The samples of every third request draw at once. */
static bool world_open(void *context, const RolloutSample *who, const Completion *c) {
    assert_int_equal(c->count, 0);
    if (who->request % 3 == 2) return false;
    world_park(context, who, c->trajectory, true);
    return true;
}

static int world_ready(void *context, bool wait, RolloutAnswer *a, Error *e) {
    World *w = context;
    (void)e;
    for (int i = 0; i < w->waiting; i++) {
        struct WorldSample *s = &w->sample[i];
        if (!wait && s->polls-- > 0) continue;
        Random r = random_start(5, 1000 * s->id + (uint64_t)(s->first ? 0 : s->y->turns));
        int n = 1 + (int)random_below(&r, 12);
        if (w->longest && random_below(&r, 4) == 0) n = w->longest;
        for (int k = 0; k < n; k++) w->ids[k] = (int32_t)random_below(&r, VOCAB);
        *a = (RolloutAnswer){
            .request = s->who.request, .sample = s->who.sample, .ids = w->ids, .count = n, .state = s->id};
        *s = w->sample[--w->waiting];
        return 1;
    }
    return 0;
}

static void world_end(void *context, const RolloutSample *who, const Completion *c) {
    (void)who;
    assert_true(c->trajectory->stop != STOP_NONE);
    ((World *)context)->ended++;
}

static bool world_finish(void *context, Error *e) {
    (void)e;
    ((World *)context)->finished++;
    return true;
}

static World *world_new(int most, int longest, uint64_t delay) {
    World *w = xcalloc(1, sizeof *w);
    *w = (World){.most = most, .longest = longest, .delay = delay};
    w->turns = (RolloutTurns){
        .context = w, .turn = world_turn, .ready = world_ready, .end = world_end, .finish = world_finish};
    return w;
}

typedef struct Work {
    int samples;
    int32_t prompt[REQUESTS][PROMPT];
    RolloutRequest request[REQUESTS];
    Completion out[8 * REQUESTS];
} Work;

static Work *work_new(uint64_t seed) {
    Work *w = xcalloc(1, sizeof *w);
    Random r = random_start(seed, 1);
    for (int i = 0; i < REQUESTS; i++) {
        const int length = 1 + (int)random_below(&r, PROMPT), samples = i % 3 ? 1 + (int)random_below(&r, 7) : 1;
        for (int k = 0; k < length; k++) w->prompt[i][k] = (int32_t)random_below(&r, VOCAB);
        w->request[i] = (RolloutRequest){.prompt = w->prompt[i],
                                         .prompt_len = length,
                                         .samples = samples,
                                         .id = (uint64_t)w->samples,
                                         .out = &w->out[w->samples]};
        w->samples += samples;
    }
    return w;
}

static void work_clear(Work *w) {
    for (int i = 0; i < w->samples; i++) completion_free(&w->out[i]);
}

static void work_free(Work *w) {
    work_clear(w);
    free(w);
}

static Sampling sampling(void) {
    Sampling s = sampling_default();
    s.temperature = 0.9f;
    s.max_new = NEW;
    s.seed = 77;
    s.stop[s.stops++] = STOP;
    return s;
}

static void run(const Model *m, int slots, const RolloutTurns *turns, Work *w, Rollout *r) {
    Error e;
    const Sampling s = sampling();
    if (!rollout_new(r, m, slots, PROMPT, NEW, &e)) fail_msg("%s", e.text);
    r->turns = turns;
    if (!rollout_run(r, &s, w->request, REQUESTS, NULL, NULL, &e)) fail_msg("%s", e.text);
}

/* ---- the engine ------------------------------------------------------------------------------------------------ */

/* The largest difference of the sampler's log-probabilities of the drawn tokens of a completion from others. */
static double logp_difference(const Completion *c, const float *logp) {
    double largest = 0;
    for (int32_t k = 0, at = 0; k < c->count; k++) {
        if (!c->trajectory->drawn[k]) continue;
        const double gap = fabs((double)logp[at++] - c->logp[k]);
        assert_false(isnan(gap));
        largest = fmax(largest, gap);
    }
    return largest;
}

/* The same from an uncached pass over the prompt and completion k of a request alone. */
static double uncached_difference(const Model *m, const Workspace *w, Batch *b, const RolloutRequest *q, int k,
                                  float temperature) {
    const Completion *c = &q->out[k];
    int32_t all[CONTEXT];
    uint8_t mask[CONTEXT] = {0};
    float logp[CONTEXT];
    memcpy(all, q->prompt, (size_t)q->prompt_len * sizeof *all);
    memcpy(all + q->prompt_len, c->tokens, (size_t)c->count * sizeof *all);
    memcpy(mask + q->prompt_len, c->trajectory->drawn, (size_t)c->count);
    batch_clear(b);
    assert_int_equal(batch_sequence(b, all, mask, q->prompt_len + c->count), completion_drawn(c));
    for (int32_t t = 0, at = 0; t < c->count; t++)
        if (c->trajectory->drawn[t]) assert_int_equal(c->tokens[t], c->trajectory->drawn_ids[at++]);
    model_forward(m, w, b, temperature, &(ModelOutput){.logp = logp});
    return logp_difference(c, logp);
}

/* The log-probability of each drawn token equals that of an uncached pass over prompt and completion. Log-probabilities
 * are of order 10, and attention sums over 1,000 keys in other blocks: 1e-4. */
static void check_uncached(const Model *m, const Work *w) {
    Error e;
    Workspace work;
    Batch b = batch_new(CONTEXT, CONTEXT, 2);
    double largest = 0;
    assert_true(workspace_new(&work, m, CONTEXT, CONTEXT, 2, false, 0, &e));
    for (int i = 0; i < REQUESTS; i++)
        for (int k = 0; k < w->request[i].samples; k++)
            largest = fmax(largest, uncached_difference(m, &work, &b, &w->request[i], k, 0.9f));
    if (!(largest <= 1e-4)) fail_msg("log-probabilities differ by %g", largest);
    workspace_free(&work, m);
    batch_free(&b);
}

/* The completions as a trainer packs them: one copy of the prompt, targets of drawn tokens only. */
static void check_packed(const Model *m, const Work *w) {
    Error e;
    Workspace work;
    enum { ROWS = PROMPT + 7 * NEW };
    Batch b = batch_new(ROWS, ROWS, 16);
    float *logp = xcalloc(ROWS, sizeof *logp);
    assert_true(workspace_new(&work, m, ROWS, ROWS, 16, false, 0, &e));
    for (int i = 0; i < REQUESTS; i++) {
        const RolloutRequest *q = &w->request[i];
        batch_clear(&b);
        const int prompt = batch_segment(&b, q->prompt, q->prompt_len, 0, -1);
        for (int k = 0; k < q->samples; k++)
            batch_completion(&b, prompt, q->out[k].tokens, completion_mask(&q->out[k]), q->out[k].count);
        const ModelOutput out = {.logp = logp};
        model_forward(m, &work, &b, 0.9f, &out);
        int at = 0;
        for (int k = 0; k < q->samples; at += completion_drawn(&q->out[k++]))
            assert_true(logp_difference(&q->out[k], logp + at) <= 1e-4);
        assert_int_equal(at, b.targets);
    }
    workspace_free(&work, m);
    batch_free(&b);
    free(logp);
}

static void assert_same(const Work *a, const Work *b, double tolerance) {
    for (int i = 0; i < a->samples; i++) {
        const Completion *x = &a->out[i], *y = &b->out[i];
        assert_int_equal(x->count, y->count);
        assert_int_equal(x->finished, y->finished);
        assert_memory_equal(x->tokens, y->tokens, (size_t)x->count * sizeof(int32_t));
        for (int k = 0; k < x->count; k++) assert_true(fabs(x->logp[k] - y->logp[k]) <= tolerance);
        if (!x->trajectory || !y->trajectory) continue;
        assert_int_equal(x->trajectory->stop, y->trajectory->stop);
        assert_int_equal(x->trajectory->turns, y->trajectory->turns);
        assert_memory_equal(x->trajectory->drawn, y->trajectory->drawn, (size_t)x->count);
        assert_memory_equal(x->trajectory->state, y->trajectory->state,
                            (size_t)x->trajectory->turns * sizeof(uint64_t));
    }
}

/* A run `a` equals uncached and packed passes, and a run of the same requests in many slots, which is `b`. */
static void check_again(const Model *m, const Work *a, Work *b, const RolloutTurns *turns) {
    Rollout r;
    check_uncached(m, a);
    check_packed(m, a);
    run(m, 64, turns, b, &r);
    rollout_free(&r);
    assert_same(a, b, 5e-5);
}

/* Turns of all lengths, answers longer than the rows of a step, trajectories that do not fit. */
static void test_turns(void **state) {
    (void)state;
    Model m = random_model(0.3, 3);
    Rollout r;
    Work *a = work_new(1), *b = work_new(1);
    World *one = world_new(5, LONG, 1), *other = world_new(5, LONG, 2);
    run(&m, 4, &one->turns, a, &r);
    int64_t drawn = 0, observed = 0;
    int stops[STOP_COUNT] = {0}, several = 0;
    for (int i = 0; i < a->samples; i++) {
        drawn += completion_drawn(&a->out[i]);
        observed += a->out[i].count - completion_drawn(&a->out[i]);
        stops[a->out[i].trajectory->stop]++;
        several += a->out[i].trajectory->turns > 2;
        assert_int_equal(a->out[i].finished, a->out[i].trajectory->stop == STOP_COMPLETED);
        assert_int_equal(a->out[i].trajectory->drawn[a->out[i].count - 1], 1);
    }
    assert_int_equal(r.tokens, drawn);
    assert_int_equal(r.observed, observed);
    assert_true(several > 20 && stops[STOP_COMPLETED] > 20 && stops[STOP_MAX_TOKENS] > 5);
    assert_int_equal(one->ended, a->samples);
    assert_int_equal(one->finished, 1);
    assert_true(r.parked_seconds > 0 && r.parked_seconds < r.used_seconds);
    rollout_free(&r);
    check_again(&m, a, b, &other->turns);
    work_free(a), work_free(b), free(one), free(other);
    model_free(&m);
}

/* Samples that begin with observed tokens, of one prompt and of several, beside others that draw at once; one that does not fit
 * is lost before it has a token. */
static void test_first(void **state) {
    (void)state;
    Model m = random_model(0.3, 3);
    Rollout r;
    Work *a = work_new(1), *b = work_new(1);
    World *one = world_new(3, LONG, 1), *other = world_new(3, LONG, 2);
    one->turns.open = other->turns.open = world_open;
    run(&m, 4, &one->turns, a, &r);
    int waited = 0;
    for (int i = 0; i < REQUESTS; i++)
        for (int k = 0; k < a->request[i].samples; k++) {
            const Completion *c = &a->request[i].out[k];
            const Trajectory *y = c->trajectory;
            assert_int_equal(completion_before(c), y->start[0]);
            assert_int_equal(y->start[0] > 0, i % 3 != 2);
            assert_int_equal(y->drawn[y->start[0]], 1);
            assert_int_equal(memchr(y->drawn, 1, (size_t)c->count) == y->drawn + y->start[0], 1);
            waited += y->start[0] == LONG;
        }
    assert_true(waited > 5);
    assert_int_equal(one->ended, a->samples);
    rollout_free(&r);
    check_again(&m, a, b, &other->turns);
    work_clear(b);
    one->longest = NEW;
    run(&m, 64, &one->turns, b, &r);
    int lost = 0;
    for (int i = 0; i < b->samples; i++) lost += !b->out[i].count && b->out[i].trajectory->stop == STOP_TOOL_FAILED;
    assert_true(lost > 5 && lost < b->samples / 2);
    rollout_free(&r);
    work_free(a), work_free(b), free(one), free(other);
    model_free(&m);
}

/* An environment that ends every trajectory after its first turn changes no bit. */
static void test_one_turn(void **state) {
    (void)state;
    Model m = random_model(0.3, 4);
    Rollout r;
    Work *a = work_new(2), *b = work_new(2);
    World *one = world_new(1, 0, 1);
    run(&m, 8, NULL, a, &r);
    rollout_free(&r);
    run(&m, 8, &one->turns, b, &r);
    rollout_free(&r);
    assert_same(a, b, 0);
    for (int i = 0; i < a->samples; i++) assert_int_equal(completion_drawn(&b->out[i]), a->out[i].count);
    work_free(a), work_free(b), free(one);
    model_free(&m);
}

/* A turn that is cut by --max-turn-tokens is not answered. */
static void test_turn_tokens(void **state) {
    (void)state;
    Model m = random_model(0.3, 3);
    Rollout r;
    Work *a = work_new(1);
    World *one = world_new(5, 0, 1);
    one->turns.turn_tokens = 6;
    int cut = 0;
    run(&m, 8, &one->turns, a, &r);
    for (int i = 0; i < a->samples; i++) {
        const Trajectory *y = a->out[i].trajectory;
        for (int t = 0, length = 0; t < a->out[i].count; t++) {
            length = y->drawn[t] ? length + 1 : 0;
            assert_true(length <= 6);
        }
        cut += y->stop == STOP_MAX_TURN_TOKENS;
        if (y->stop == STOP_MAX_TURN_TOKENS) assert_int_equal(a->out[i].count - y->first, 6);
    }
    assert_true(cut > 20);
    work_clear(a);
    rollout_free(&r);
    free(a), free(one);
    model_free(&m);
}

/* An environment whose answers are there at once. */
static int world_ready_now(void *context, bool wait, RolloutAnswer *a, Error *e) {
    (void)wait;
    return world_ready(context, true, a, e);
}

static const Rollout *watched; /* by slow_ready() */

/* An environment that takes 5 ms for each answer, one after another. Meanwhile every parked sample has one slot, or one place
 * in the queue if it was parked before it had a slot. */
static int slow_ready(void *context, bool wait, RolloutAnswer *a, Error *e) {
    const struct timespec pause = {.tv_nsec = 5000000};
    const World *w = context;
    if (!wait) return 0;
    for (int i = 0; i < w->waiting; i++) {
        const RolloutSample *who = &w->sample[i].who;
        int places = 0;
        for (int k = 0; k < watched->slots; k++) {
            const RolloutSlot *s = &watched->slot[k];
            places += s->prompt_area >= 0 && s->request == who->request && s->sample == who->sample;
        }
        for (int k = 0; k < watched->waiting_count; k++) {
            const RolloutWaiting *q = &watched->waiting[(watched->waiting_first + k) % watched->waiting_capacity];
            places += q->request == who->request && q->sample == who->sample;
        }
        assert_int_equal(places, 1);
    }
    nanosleep(&pause, NULL);
    return world_ready(context, true, a, e);
}

/* Samples that wait keep their places, and draw what they draw without waiting. With answers that take much longer
 * than a model call, slots wait for most of the time, and with answers that are there at once for none of it. */
static void test_parked(void **state) {
    (void)state;
    Model m = random_model(0.3, 3);
    Rollout r;
    Work *a = work_new(1), *b = work_new(1);
    World *slow = world_new(3, 0, 1), *quick = world_new(3, 0, 1);
    slow->turns.ready = slow_ready;
    watched = &r;
    run(&m, 6, &slow->turns, a, &r);
    assert_true(r.parked_seconds > 0.5 * r.used_seconds && r.parked_seconds < r.used_seconds);
    assert_int_equal(r.parked, 0);
    for (int i = 0; i < r.slots; i++) assert_true(r.slot[i].prompt_area < 0 && !r.area_users[i]);
    rollout_free(&r);
    quick->turns.ready = world_ready_now;
    run(&m, 6, &quick->turns, b, &r);
    assert_true(r.used_seconds > 0 && r.parked_seconds == 0);
    rollout_free(&r);
    assert_same(a, b, 5e-5);
    work_free(a), work_free(b), free(slow), free(quick);
    model_free(&m);
}

/* What is sent to another rank is what arrives. */
static void test_pack(void **state) {
    (void)state;
    const int32_t tokens[] = {3, 1, 4, 1, 5, 9, 2};
    Trajectory *y = trajectory_new(7);
    memcpy(y->drawn, "\1\1\0\0\0\1\1", 7);
    y->first = 5;
    trajectory_turn(y);
    y->stop = STOP_MAX_TURNS;
    y->reward = -0.25f;
    y->end_reward = 0.75f;
    y->turn_reward[0] = 1.5f;
    y->malformed[0] = 1;
    y->state[1] = 0x123456789abcdef0u;
    y->counts.failed_calls = 3;
    trajectory_branch(y, 0);
    trajectory_branch(y, 4);
    strcpy(y->role, "player0");
    strcpy(y->episode_id, "12.0");
    int32_t words[128];
    const int64_t n = trajectory_pack(y, 7, words);
    assert_int_equal(n, trajectory_words(y, 7));
    Trajectory *z = trajectory_unpack(words, tokens, 7);
    assert_int_equal(z->stop, y->stop);
    assert_int_equal(z->turns, 2);
    assert_int_equal(z->first, 5);
    assert_memory_equal(z->drawn, y->drawn, 7);
    assert_memory_equal(&z->counts, &y->counts, sizeof y->counts);
    assert_true(z->reward == -0.25f && z->turn_reward[0] == 1.5f && isnan(z->turn_reward[1]));
    assert_true(z->state[1] == y->state[1]);
    assert_int_equal(z->drawn_count, 4);
    assert_memory_equal(z->drawn_ids, ((int32_t[]){3, 1, 9, 2}), 4 * sizeof(int32_t));
    assert_string_equal(z->role, "player0");
    assert_string_equal(z->episode_id, "12.0");
    assert_true(z->end_reward == 0.75f && z->start[0] == 0 && z->start[1] == 5);
    assert_true(z->branches == 2 && z->branch[0] == 0 && z->branch[1] == 4);
    assert_true(trajectory_branch_end(z, 0, 7) == 4 && trajectory_branch_end(z, 1, 7) == 7);
    /* turns whose call could not be read become context, unless nothing is left */
    assert_true(trajectory_mask_errors(z, tokens, 7));
    assert_memory_equal(z->drawn, "\0\0\0\0\0\1\1", 7);
    assert_true(z->drawn_count == 2 && z->masked == 2 && z->drawn_ids[0] == 9 && z->drawn_ids[1] == 2);
    z->malformed[1] = 1;
    assert_false(trajectory_mask_errors(z, tokens, 7));
    assert_int_equal(z->drawn_count, 2);
    trajectory_free(y), trajectory_free(z);
}

/* ---- tokens in, tokens out --------------------------------------------------------------------------------------- */

enum { GROUP = 8, GROUPS = REQUESTS, SHORT = 160, GROUP_ROWS = PROMPT + GROUP * SHORT };

/* What the sampler drew and what the environment sent, of each sample in order, noted outside of the engine. */
typedef struct Ledger {
    World *world;
    int32_t token[GROUPS * GROUP][2 * SHORT];
    uint8_t drawn[GROUPS * GROUP][2 * SHORT];
    int32_t count[GROUPS * GROUP];
} Ledger;

static void ledger_add(Ledger *r, int64_t request, int32_t sample, int32_t token, bool drawn) {
    const int64_t i = request * GROUP + sample;
    assert_true(r->count[i] < 2 * SHORT);
    r->token[i][r->count[i]] = token;
    r->drawn[i][r->count[i]++] = drawn;
}

static void ledger_drawn(void *context, int64_t request, int32_t sample, int32_t token) {
    ledger_add(context, request, sample, token, true);
}

static bool ledger_open(void *context, const RolloutSample *who, const Completion *c) {
    return world_open(((Ledger *)context)->world, who, c);
}

static bool ledger_turn(void *context, const RolloutSample *who, const Completion *c) {
    return world_turn(((Ledger *)context)->world, who, c);
}

static int ledger_ready(void *context, bool wait, RolloutAnswer *a, Error *e) {
    Ledger *r = context;
    const int ready = world_ready(r->world, wait, a, e);
    for (int32_t k = 0; ready > 0 && k < a->count; k++) ledger_add(r, a->request, a->sample, a->ids[k], false);
    return ready;
}

static void ledger_end(void *context, const RolloutSample *who, const Completion *c) {
    world_end(((Ledger *)context)->world, who, c);
}

static bool ledger_finish(void *context, Error *e) { return world_finish(((Ledger *)context)->world, e); }

/* A completion has the tokens of the ledger. An answer that did not fit is in the ledger alone. */
static void ledger_check(const Ledger *r, int i, const Completion *c) {
    const int32_t n = c->count;
    assert_true(n > 0 && n <= SHORT && n <= r->count[i]);
    assert_memory_equal(c->tokens, r->token[i], (size_t)n * sizeof(int32_t));
    assert_memory_equal(c->trajectory->drawn, r->drawn[i], (size_t)n);
    for (int32_t k = n; k < r->count[i]; k++) assert_int_equal(r->drawn[i][k], 0);
    if (r->count[i] > n) assert_int_equal(c->trajectory->stop, STOP_MAX_TOKENS);
}

/* The rows of the batch of group g are the prompt and each completion without its last token, and its targets the drawn
 * tokens, each after the row before it. */
static void ledger_check_batch(const Ledger *r, const Batch *b, const Generation *g, int group) {
    const int32_t *prompt = g->train.tokens + g->train.offset[group];
    const int32_t n = (int32_t)(g->train.offset[group + 1] - g->train.offset[group]);
    int32_t row = n, target = 0;
    assert_memory_equal(b->tokens, prompt, (size_t)n * sizeof *prompt);
    for (int i = group * GROUP; i < (group + 1) * GROUP; i++)
        for (int32_t k = 0, count = g->scored[i].completion.count; k < count; k++) {
            if (r->drawn[i][k]) {
                assert_int_equal(b->target_row[target], k ? row - 1 : n - 1);
                assert_int_equal(b->target_token[target++], r->token[i][k]);
            }
            if (k + 1 < count) assert_int_equal(b->tokens[row++], r->token[i][k]);
        }
    assert_int_equal(row, b->rows);
    assert_int_equal(target, b->targets);
}

typedef struct Compared {
    int64_t trajectories, turns, drawn, observed;
    /* the largest differences of the sampler's log-probabilities from those of training batches, and of passes over whole
     * sequences */
    double trained, whole;
} Compared;

/* Samples a generation of GROUPS x GROUP trajectories and adds it to what is compared. */
static void compare_generation(const Model *m, uint64_t seed, Compared *sum) {
    Error e;
    Rollout rollout;
    Workspace w;
    Ledger *r = xcalloc(1, sizeof *r);
    int32_t prompts[GROUPS * PROMPT];
    int64_t offset[GROUPS + 1] = {0};
    float logp[GROUP_ROWS];
    RolloutRequest request[GROUPS];
    Completion out[GROUPS * GROUP];
    ScoredCompletion scored[GROUPS * GROUP] = {0};
    Random random = random_start(seed, 7);
    Sampling s = sampling();
    s.seed = seed;
    s.max_new = SHORT;
    r->world = world_new(6, 0, seed);
    const RolloutTurns turns = {.context = r,
                                .open = seed % 2 ? ledger_open : NULL,
                                .turn = ledger_turn,
                                .ready = ledger_ready,
                                .end = ledger_end,
                                .finish = ledger_finish};
    for (int i = 0; i < GROUPS; i++) {
        offset[i + 1] = offset[i] + 1 + (int64_t)random_below(&random, PROMPT);
        for (int64_t k = offset[i]; k < offset[i + 1]; k++) prompts[k] = (int32_t)random_below(&random, VOCAB);
        request[i] = (RolloutRequest){.prompt = prompts + offset[i],
                                      .prompt_len = (int32_t)(offset[i + 1] - offset[i]),
                                      .samples = GROUP,
                                      .id = (uint64_t)(i * GROUP),
                                      .out = &out[i * GROUP]};
    }
    if (!rollout_new(&rollout, m, 1 + (int)(seed % 64), PROMPT, SHORT, &e)) fail_msg("%s", e.text);
    rollout.turns = &turns;
    if (!rollout_run(&rollout, &s, request, GROUPS, ledger_drawn, r, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < GROUPS * GROUP; i++) {
        scored[i] = (ScoredCompletion){.completion = out[i], .prompt = i / GROUP};
        ledger_check(r, i, &out[i]);
        sum->trajectories++;
        sum->turns += out[i].trajectory->turns;
        sum->drawn += completion_drawn(&out[i]);
    }
    sum->observed += rollout.observed;
    const GenerationOptions how = {.prompts = GROUPS, .generations = GROUP, .max_completion = SHORT};
    Generation g = {
        .o = &how, .rows = GROUP_ROWS, .scored = scored, .batch = batch_new(GROUP_ROWS, GROUP_ROWS, GROUP + 1)};
    g.train.tokens = prompts;
    g.train.offset = offset;
    assert_true(workspace_new(&w, m, GROUP_ROWS, GROUP_ROWS, GROUP + 1, true, 0, &e));
    for (int i = 0, at = 0; i < GROUPS; i++, at = 0) {
        batch_clear(&g.batch);
        generation_fill(&g, &g.batch, i * GROUP, (i + 1) * GROUP, prompts, offset);
        ledger_check_batch(r, &g.batch, &g, i);
        model_forward(m, &w, &g.batch, s.temperature, &(ModelOutput){.logp = logp});
        for (int k = i * GROUP; k < (i + 1) * GROUP; at += completion_drawn(&out[k++]))
            sum->trained = fmax(sum->trained, logp_difference(&out[k], logp + at));
        for (int k = 0; k < GROUP; k++)
            sum->whole = fmax(sum->whole, uncached_difference(m, &w, &g.batch, &request[i], k, s.temperature));
    }
    for (int i = 0; i < GROUPS * GROUP; i++) completion_free(&out[i]);
    batch_free(&g.batch);
    workspace_free(&w, m);
    rollout_free(&rollout);
    free(r->world), free(r);
}

/* The tokens that a trainer gets are those that were drawn and observed, and they have the sampler's log-probabilities, in the
 * batches of a trainer and in passes over whole sequences. Logits are sums of 32 products of order 1, of which float32 keeps
 * 1e-6: 1e-5. */
static void test_token_in_token_out(void **state) {
    (void)state;
    Model m = random_model(0.2, 8);
    const char *given = getenv("TRAJECTORIES");
    const int64_t wanted = given ? strtoll(given, NULL, 10) : 300;
    Compared sum = {0};
    for (uint64_t seed = 1; sum.trajectories < wanted; seed++) compare_generation(&m, seed, &sum);
    print_message(
        "%lld trajectories of %.1f turns, %.0f drawn and %.0f observed tokens: the log-probabilities differ by at most "
        "%.2g in training batches and %.2g in whole sequences\n",
        (long long)sum.trajectories, (double)sum.turns / (double)sum.trajectories,
        (double)sum.drawn / (double)sum.trajectories, (double)sum.observed / (double)sum.trajectories, sum.trained,
        sum.whole);
    assert_true(sum.turns > 2 * sum.trajectories && sum.observed > 5 * sum.trajectories);
    assert_true(sum.trained > 0 && sum.trained < 1e-5);
    assert_true(sum.whole > 0 && sum.whole < 1e-5);
    model_free(&m);
}

/* ---- GAE ------------------------------------------------------------------------------------------------------- */

/* verl's compute_gae_advantage_return: the values and sums of observed tokens are carried over. The generation stores only
 * drawn tokens, on which gae() gives the same. Sums of float64 that are stored as float32: 1e-6 of the largest. */
static void test_gae(void **state) {
    (void)state;
    enum { N = 200 };
    float reward[N], value[N], A[N];
    double full_reward[N], full_value[N], wanted[N];
    uint8_t drawn[N];
    Random r = random_start(9, 9);
    const double gamma = 0.97, lambda = 0.9;
    int n = 0;
    for (int t = 0; t < N; t++) {
        drawn[t] = t == N - 1 || random_below(&r, 3) > 0;
        full_reward[t] = drawn[t] && random_below(&r, 5) == 0 ? random_normal(&r) : 0;
        full_value[t] = random_normal(&r);
        if (drawn[t]) {
            reward[n] = (float)full_reward[t];
            value[n++] = (float)full_value[t];
        }
        full_reward[t] = (float)full_reward[t];
        full_value[t] = (float)full_value[t];
    }
    double next = 0, last = 0;
    for (int t = N - 1; t >= 0; t--) {
        const double delta = full_reward[t] + gamma * next - full_value[t], sum = delta + gamma * lambda * last;
        next = drawn[t] ? full_value[t] : next;
        last = drawn[t] ? sum : last;
        wanted[t] = last;
    }
    gae(reward, value, n, gamma, lambda, A);
    for (int t = 0, at = 0; t < N; t++)
        if (drawn[t]) assert_true(fabs(A[at++] - wanted[t]) < 1e-5);
}

/* Pairs of completions with observed tokens: the drawn ones alone are targets, and have the log-probabilities that they have
 * in the whole sequence. */
static void test_pairs(void **state) {
    (void)state;
    enum { N = 40 };
    Error e;
    Random r = random_start(12, 0);
    Model m = random_model(0.3, 6);
    Workspace w;
    int32_t tokens[2][8 + N];
    uint8_t mask[2][N];
    float logp[8 + N];
    CompletionSet s = {.shared = true};
    Batch b = batch_new(4 * N, 4 * N, 8);
    assert_true(workspace_new(&w, &m, 4 * N, 4 * N, 8, false, 0, &e));
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 8 + N; i++) {
            tokens[k][i] = k && i < 8 ? tokens[0][i] : (int32_t)random_below(&r, VOCAB);
            if (i >= 8) mask[k][i - 8] = i == 8 || random_below(&r, 2);
        }
    const Pair pair = {.prompt = tokens[0],
                       .prompt_len = 8,
                       .chosen = tokens[0] + 8,
                       .chosen_len = N,
                       .chosen_mask = mask[0],
                       .rejected = tokens[1] + 8,
                       .rejected_len = N - 3,
                       .rejected_mask = mask[1]};
    completion_set_add(&s, &pair, 0);
    const MicroPlan *plan = completion_set_plan(&s, &b);
    assert_int_equal(plan->micros, 1);
    const CompletionSlice x = completion_set_pack(&s, &b, 0, 1);
    model_forward(&m, &w, &b, 1.0f, &(ModelOutput){.logp = x.logp});
    int at = 0;
    for (int k = 0; k < 2; k++) {
        batch_clear(&b);
        batch_sequence(&b, tokens[k], NULL, 8 + N - 3 * k);
        model_forward(&m, &w, &b, 1.0f, &(ModelOutput){.logp = logp});
        for (int i = 0; i < N - 3 * k; i++)
            if (mask[k][i]) assert_true(fabsf(logp[7 + i] - x.logp[at++]) < 1e-5f);
        assert_int_equal(x.offset[2 + k], at);
    }
    completion_set_free(&s);
    batch_free(&b);
    workspace_free(&w, &m);
    model_free(&m);
}

/* ---- the cross-entropy of observations -------------------------------------------------------------------------- */

enum { SIDE = 3, LENGTH = 12, ALL = 4 * (SIDE + LENGTH) };

/* The loss of four completions from passes over their whole sequences: sum a_t log pi of the drawn tokens, and alpha times
 * the mean cross-entropy of the observed ones of the completions that count. */
static double observation_loss(const Model *m, const Workspace *w, const Generation *g, const float *a, double alpha) {
    double loss = 0, observed = 0, n = 0;
    Batch b = batch_new(SIDE + LENGTH, SIDE + LENGTH, 1);
    for (int32_t i = 0, t = 0; i < 4; i++) {
        const Completion *c = &g->scored[i].completion;
        int32_t tokens[SIDE + LENGTH];
        float logp[SIDE + LENGTH];
        memcpy(tokens, g->train.tokens + SIDE * g->scored[i].prompt, SIDE * sizeof *tokens);
        memcpy(tokens + SIDE, c->tokens, (size_t)c->count * sizeof *tokens);
        batch_clear(&b);
        batch_sequence(&b, tokens, NULL, SIDE + c->count);
        model_forward(m, w, &b, 0.8f, &(ModelOutput){.logp = logp});
        for (int32_t k = 0; k < c->count; k++) {
            const double own = logp[SIDE - 1 + k];
            if (c->trajectory->drawn[k]) loss += a[t++] * own;
            else if (g->counts[i]) observed -= own, n++;
        }
    }
    batch_free(&b);
    return loss + alpha * observed / n;
}

/* The gradient of --observation-ce is that of central differences along itself, and its loss that of whole sequences. */
static void test_observation_ce(void **state) {
    (void)state;
    Error e;
    Random r = random_start(11, 0);
    Model m = random_model(0.3, 5);
    Workspace w;
    int32_t prompts[2 * SIDE];
    int64_t prompt[] = {0, SIDE, 2 * SIDE};
    const GenerationOptions how = {.prompts = 2, .generations = 2, .max_completion = LENGTH};
    const CreditOptions options = {.observation = 0.7};
    Generation g = {.o = &how, .rows = ALL};
    Credit c;
    float a[ALL], entropy[ALL], dentropy[ALL] = {0}, logp[ALL];
    int32_t offset[5] = {0};
    uint8_t counts[] = {1, 1, 0, 1};
    for (int i = 0; i < 2 * SIDE; i++) prompts[i] = (int32_t)random_below(&r, VOCAB);
    g.train.tokens = prompts;
    g.train.offset = prompt;
    g.counts = counts;
    g.scored = xcalloc(4, sizeof *g.scored);
    for (int i = 0; i < 4; i++) {
        Completion *y = &g.scored[i].completion;
        g.scored[i].prompt = i / 2;
        *y = (Completion){
            .tokens = xcalloc(LENGTH, sizeof(int32_t)), .count = LENGTH - i, .trajectory = trajectory_new(LENGTH)};
        for (int k = 0; k < y->count; k++) {
            y->tokens[k] = (int32_t)random_below(&r, VOCAB);
            y->trajectory->drawn[k] = k < 2 || random_below(&r, 2);
        }
        trajectory_count(y->trajectory, y->tokens, y->count);
        offset[i + 1] = offset[i] + y->trajectory->drawn_count;
    }
    for (int t = 0; t < offset[4]; t++) a[t] = (float)random_normal(&r) / 8;
    assert_true(workspace_new(&w, &m, ALL, ALL, ALL, true, 0, &e));
    credit_open(&c, &options, &g);
    g.batch = batch_new(ALL, ALL, ALL);
    const GenerationSlice x = {
        .count = 4, .offset = offset, .counts = counts, .logp = logp, .dlogp = a, .entropy = entropy};
    generation_fill(&g, &g.batch, 0, 4, prompts, prompt);
    credit_begin(&c, &g, 0, 4);
    credit_forward(&c, &g, &x, &m, &w, 0.8f, NULL);
    B->zero(D, m.grads, m.parameters * sizeof(float));
    double loss = credit_backward(&c, &g, &x, &m, &w, 0.8f, dentropy, NULL), square = 0, side[2];
    for (int t = 0; t < offset[4]; t++) loss += (double)a[t] * logp[t];
    const double wanted = observation_loss(&m, &w, &g, a, 0.7);
    if (!(fabs(loss - wanted) < 1e-5 * fabs(wanted))) fail_msg("%g is not %g", loss, wanted);
    float *grad = xmalloc(m.parameters * sizeof *grad), *at = xmalloc(m.parameters * sizeof *at),
          *to = xmalloc(m.parameters * sizeof *to);
    B->download(D, grad, m.grads, m.parameters * sizeof *grad);
    model_download(&m, 0, at, m.parameters);
    for (size_t i = 0; i < m.parameters; i++) square += (double)grad[i] * grad[i];
    const double step = 0.002 * fabs(wanted) / square;
    for (int k = 0; k < 2; k++) {
        for (size_t i = 0; i < m.parameters; i++) to[i] = at[i] + (float)((k ? step : -step) * grad[i]);
        model_upload(&m, 0, to, m.parameters);
        side[k] = observation_loss(&m, &w, &g, a, 0.7);
    }
    const double slope = (side[1] - side[0]) / (2 * step);
    if (!(fabs(slope - square) < 5e-3 * square)) fail_msg("slope %g, gradient %g", slope, square);
    for (int i = 0; i < 4; i++) completion_free(&g.scored[i].completion);
    free(g.scored), free(grad), free(at), free(to);
    credit_close(&c);
    batch_free(&g.batch);
    workspace_free(&w, &m);
    model_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_turns),         cmocka_unit_test(test_first),  cmocka_unit_test(test_one_turn),
        cmocka_unit_test(test_turn_tokens),   cmocka_unit_test(test_parked), cmocka_unit_test(test_pack),
        cmocka_unit_test(test_gae),           cmocka_unit_test(test_pairs),  cmocka_unit_test(test_token_in_token_out),
        cmocka_unit_test(test_observation_ce)};
    return cmocka_run_group_tests_name("trajectory", tests, open_device_one_thread, close_device);
}
