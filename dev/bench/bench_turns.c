/* bench_turns.c - benchmark of completions of several turns, with an environment that only waits.
 *
 *     make build/bench_turns && build/bench_turns
 *
 *   1  share of the time in which the engine computes, with tools whose answers come after times drawn from an exponential
 *      distribution: as the engine works, where others go on while some wait, and in lock-step, where the next turn begins when
 *      all answers are there
 *   2  time of a turn in short and in long trajectories, with answers that come at once
 *
 * Weights and prompts are random; a turn ends after a fixed number of tokens. Prints a table.
 */
#include "../../llmc/base/clock.h"         /* clock_seconds */
#include "../../llmc/base/error.h"         /* die, Error, xcalloc, usage_error, ... */
#include "../../llmc/base/options.h"       /* OPTION_INT, OPTION_END, OPTION_REAL, Option, ... */
#include "../../llmc/base/random.h"        /* Random, random_below, random_real, random_start */
#include "../../llmc/cpu/cpu.h"            /* backend_cpu_for */
#include "../../llmc/model/backend.h"      /* DTYPE_FLOAT32, Backend, Device */
#include "../../llmc/model/config.h"       /* ModelConfig, gpt2_config */
#include "../../llmc/model/model.h"        /* Model, model_free, model_init, model_new */
#include "../../llmc/rollout/rollout.h"    /* Completion, RolloutRequest, RolloutSample, RolloutAnswer, ... */
#include "../../llmc/rollout/trajectory.h" /* STOP_COMPLETED, Trajectory */
#include <math.h>
#include <time.h>

enum { VOCAB = 256, PROMPT = 32, MOST = 1024 };

static struct {
    int64_t layers, width, slots, samples, turns, drawn, observed;
    double latency;
} o = {.layers = 2, .width = 128, .slots = 64, .samples = 128, .turns = 4, .drawn = 8, .observed = 8, .latency = 0.1};

static const Option options[] = {
    OPTION_INT("layers", 0, &o.layers, 1, 100, "layers of the model"),
    OPTION_INT("width", 0, &o.width, 64, 8192, "width of the model, a multiple of 64"),
    OPTION_INT("slots", 0, &o.slots, 1, MOST, "completions in progress"),
    OPTION_INT("samples", 0, &o.samples, 1, MOST, "completions"),
    OPTION_INT("turns", 0, &o.turns, 1, 64, "turns of a completion in the first part"),
    OPTION_INT("drawn", 0, &o.drawn, 1, 64, "tokens that are drawn in a turn"),
    OPTION_INT("observed", 0, &o.observed, 1, 64, "tokens of an answer"),
    OPTION_REAL("latency", 0, &o.latency, 0, 100, "mean time until an answer comes, in seconds"),
    OPTION_END};
static const OptionAbout about = {"[options]", "Times completions of several turns, with tools that only wait."};

/* An environment whose answers come after a time; `due` of each waiting sample. */
typedef struct Waiter {
    RolloutTurns turns;
    int most;
    double mean;
    bool lock_step, releasing;
    int count;
    struct Waiting {
        RolloutSample who;
        double due;
    } waiting[MOST];
    Random random;
    double idle; /* seconds in which nothing could be computed */
    int32_t ids[64];
} Waiter;

static bool waiter_turn(void *context, const RolloutSample *who, const Completion *c) {
    Waiter *w = context;
    Trajectory *y = c->trajectory;
    if (y->turns >= w->most) {
        y->stop = STOP_COMPLETED;
        return false;
    }
    const double wait = -w->mean * log(1 - random_real(&w->random));
    w->waiting[w->count++] = (struct Waiting){*who, clock_seconds() + wait};
    return true;
}

/* The time at which the engine may go on: that of the first answer, or in lock-step of the last. */
static double waiter_due(const Waiter *w) {
    double due = w->waiting[0].due;
    for (int i = 1; i < w->count; i++) due = w->lock_step ? fmax(due, w->waiting[i].due) : fmin(due, w->waiting[i].due);
    return due;
}

static int waiter_ready(void *context, bool wait, RolloutAnswer *a, Error *e) {
    Waiter *w = context;
    (void)e;
    if (!w->count) {
        w->releasing = false;
        return 0;
    }
    if (w->lock_step && !wait && !w->releasing) return 0;
    const double start = clock_seconds(), left = waiter_due(w) - start;
    if (left > 0 && !wait) return 0;
    if (left > 0) {
        nanosleep(&(struct timespec){(time_t)left, (long)(1e9 * (left - floor(left)))}, NULL);
        w->idle += clock_seconds() - start;
    }
    w->releasing = w->lock_step;
    int next = 0;
    for (int i = 1; i < w->count; i++)
        if (w->waiting[i].due < w->waiting[next].due) next = i;
    *a = (RolloutAnswer){.request = w->waiting[next].who.request,
                         .sample = w->waiting[next].who.sample,
                         .ids = w->ids,
                         .count = (int32_t)o.observed};
    w->waiting[next] = w->waiting[--w->count];
    return 1;
}

static void waiter_end(void *context, const RolloutSample *who, const Completion *c) {
    (void)context, (void)who, (void)c;
}

static bool waiter_finish(void *context, Error *e) {
    (void)context, (void)e;
    return true;
}

/* Draws n completions of `turns` turns. Returns the seconds that this takes; *idle: those in which the engine waits. */
static double run(const Model *m, int slots, int n, int turns, double latency, bool lock_step, double *idle) {
    Error e;
    Rollout r;
    static Waiter w;
    const int length = (int)((o.drawn + o.observed) * turns);
    Sampling how = sampling_default();
    how.max_new = length;
    w = (Waiter){.most = turns, .mean = latency, .lock_step = lock_step, .random = random_start(3, 1)};
    w.turns = (RolloutTurns){.context = &w,
                             .turn_tokens = (int32_t)o.drawn,
                             .cut = true,
                             .turn = waiter_turn,
                             .ready = waiter_ready,
                             .end = waiter_end,
                             .finish = waiter_finish};
    if (!rollout_new(&r, m, slots, PROMPT, length, &e)) die("%s", e.text);
    r.turns = &w.turns;
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)n, sizeof *q);
    Completion *out = (Completion *)xcalloc((size_t)n, sizeof *out);
    int32_t *prompt = (int32_t *)xmalloc((size_t)(n * PROMPT) * sizeof *prompt);
    for (int i = 0; i < n * PROMPT; i++) prompt[i] = (int32_t)random_below(&w.random, VOCAB);
    for (int i = 0; i < n; i++)
        q[i] = (RolloutRequest){
            .prompt = prompt + i * PROMPT, .prompt_len = PROMPT, .samples = 1, .id = (uint64_t)i, .out = out + i};
    const double start = clock_seconds();
    if (!rollout_run(&r, &how, q, n, NULL, NULL, &e)) die("%s", e.text);
    const double seconds = clock_seconds() - start;
    for (int i = 0; i < n; i++) {
        if (out[i].trajectory->turns != turns || out[i].trajectory->stop != STOP_COMPLETED)
            die("a completion has %d turns and not %d", out[i].trajectory->turns, turns);
        completion_free(&out[i]);
    }
    *idle = w.idle;
    free(q), free(out), free(prompt), rollout_free(&r);
    return seconds;
}

int main(int argc, char **argv) {
    Error e;
    Device *d;
    Model m;
    double idle;
    enum { SHORT = 8, LONG = 128, GROUP = 16 };
    options_parse_all(options, &about, argc, argv);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (o.width % 64) usage_error("--width must be a multiple of 64");
    const Backend *b = backend_cpu_for(DTYPE_FLOAT32);
    if (!b->open(&d, DTYPE_FLOAT32, &e)) die("%s", e.text);
    const ModelConfig c = gpt2_config((int)o.layers, (int)(o.width / 64), (int)o.width, VOCAB,
                                      (int)((o.drawn + o.observed) * LONG) + PROMPT);
    if (!model_new(&m, &c, b, d, false, &e)) die("%s", e.text);
    model_init(&m, 1);
    printf("%.1f M parameters, %d tokens drawn and %d observed in a turn\n", 1e-6 * (double)m.parameters, (int)o.drawn,
           (int)o.observed);
    printf("1  %d completions of %d turns, %d slots; answers after %g s (mean, exponential)\n", (int)o.samples,
           (int)o.turns, (int)o.slots, o.latency);
    for (int lock = 0; lock < 2; lock++) {
        const double seconds = run(&m, (int)o.slots, (int)o.samples, (int)o.turns, o.latency, lock, &idle);
        printf("   %-10s %6.2f s, %5.1f %% of them computing\n", lock ? "lock-step" : "as it is", seconds,
               100 * (1 - idle / seconds));
    }
    printf("2  %d completions at the same time, answers at once\n", GROUP);
    const double few = run(&m, GROUP, GROUP, SHORT, 0, false, &idle) / SHORT,
                 many = run(&m, GROUP, GROUP, LONG, 0, false, &idle) / LONG;
    printf("   %3d turns: %.2f ms a turn\n   %3d turns: %.2f ms a turn, %.2f times as long\n", SHORT, 1e3 * few, LONG,
           1e3 * many, many / few);
    model_free(&m), b->close(d);
    return 0;
}
