/* test_dist.c - runs on several ranks: the distribution of work, launchers, and the programs under mpirun.
 *
 * Samples and losses must be the same on 1, 2 and 4 ranks and for every --zero, and repeated runs must give the same
 * bits. States are resumed on another number of ranks. Ranks die, hang or are asked to stop. Needs the trainers,
 * python3 and llmc_mpi.so; without mpirun or that library only the parts that need neither are tested. */
#include "../llmc/base/error.h"      /* Error */
#include "../llmc/base/launch.h"     /* LAUNCH_ALONE, LAUNCH_MPI, LAUNCH_VARIABLES, Launch, ... */
#include "../llmc/base/random.h"     /* random_bits */
#include "../llmc/cpu/cpu.h"         /* backend_cpu */
#include "../llmc/dist/dist.h"       /* dist_any, dist_share, Dist, dist_close, ... */
#include "../llmc/model/backend.h"   /* Backend */
#include "../llmc/model/config.h"    /* ModelConfig, gpt2_config */
#include "../llmc/model/model.h"     /* model_grads_layout */
#include "../llmc/model/optimizer.h" /* optimizer_bytes, optimizer_bytes_share, optimizer_slices */
#include "../llmc/model/share.h"     /* Share, SHARE_ALIGN, share_slice */
#include "../llmc/model/tensors.h"   /* TENSOR_COUNT, TensorInfo, model_tensors */
#include "files.h"                   /* files_path, files_assert_content, text_of */
#include "models.h"                  /* lines_of, json_line_of, refused, assert_near, ... */
#include "run.h"                     /* sh, weights_gap, metric, assert_same_file, ... */
#include "shell.h"                   /* said, assert_holds, run, put */

static bool mpi; /* true if mpirun and llmc_mpi.so exist */

#define SFT                                                                                                            \
    "./train_sft --layers 3 --width 32 --heads 2 --context 16 -i $T/chat.shard -j $T/chat.shard --eval-steps 5 "       \
    "-l 1e-2 --batch-tokens 256 --micro-tokens 64 --weight-decay 0.1 "
#define GRPO                                                                                                              \
    "./train_grpo -c $T/base.bin -i $T/tasks.shard -j $T/tasks.shard --max-eval-samples 9 --eval-steps 3 -g 4 -p 6 -G 4 " \
    "--micro-tokens 96 -l 1e-3 --sample-count 1 --eval-samples 4 --reward verify,random:0.3 "

static int setup(void **state) {
    if (models_setup(state)) return 1;
    mpi = !access("llmc_mpi.so", R_OK) && !system("command -v mpirun >/dev/null");
    setenv("GOMP_SPINCOUNT", "1000", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("RANKS", "mpirun --oversubscribe --bind-to none -n", 1);
    FILE *chat = fopen(files_path("chat.jsonl"), "w"), *tasks = fopen(files_path("tasks.jsonl"), "w");
    for (int p = 0; p < 26; p++) {
        for (int k = 0; k < 10; k++)
            fprintf(chat, "{\"prompt\":\"%c=\",\"completion\":\"%d%.*s\"}\n", 'a' + p, k, k % 4, "xyz");
        fprintf(tasks, "{\"prompt\":\"%.*s%c=\",\"answer\":\"%d\",\"task\":\"exact\"}\n", p % 4, "abc", 'a' + p,
                (3 * p + 1) % 10);
    }
    if (fclose(chat) | fclose(tasks)) return 1;
    sh("data/make_shard --quiet -i $T/chat.jsonl -o $T/chat.shard");
    sh("data/make_shard --quiet -i $T/tasks.jsonl -o $T/tasks.shard");
    sh("sed '1~3!s/}$/,\"target\":[\"7\",\"12\"]}/' $T/tasks.jsonl | data/make_shard --quiet -i - -o $T/given.shard");
    sh("./train_sft --layers 1 --width 32 --heads 2 --context 24 -i $T/chat.shard -o $T/base.bin -x 30 -l 0.02 "
       "--batch-tokens 512 --micro-tokens 512");
    return 0;
}

/* ---- distribution of work --------------------------------------------------------------------------------------- */

static void slices_cover_everything_once(void **state) {
    (void)state;
    for (size_t n = 0; n < 3000; n += 1 + n / 7)
        for (int ranks = 1; ranks < 9; ranks++) {
            size_t next = 0;
            for (int r = 0; r < ranks; r++) {
                size_t first, count;
                share_slice(n, r, ranks, &first, &count);
                assert_int_equal(first, next);
                if (r < ranks - 1) assert_int_equal(count % SHARE_ALIGN, 0);
                next += count;
            }
            assert_int_equal(next, n);
        }
}

/* The distribution found is at most 7/6 of the best of all distributions of seven pieces over two ranks (Graham's bound
 * for two ranks, 4/3 - 1/6), and every piece has an owner. */
static void work_is_shared_out_evenly(void **state) {
    (void)state;
    enum { N = 7 };
    for (uint64_t seed = 0; seed < 200; seed++) {
        double cost[N], total = 0, load[2] = {0}, best = INFINITY;
        int32_t owner[N];
        for (int i = 0; i < N; i++) total += cost[i] = 1 + (double)(random_bits(seed, 1, (uint64_t)i) % 100);
        dist_share(cost, N, 2, owner);
        for (int i = 0; i < N; i++) {
            assert_in_range(owner[i], 0, 1);
            load[owner[i]] += cost[i];
        }
        for (int set = 0; set < 1 << N; set++) {
            double half = 0;
            for (int i = 0; i < N; i++) half += set >> i & 1 ? cost[i] : 0;
            best = fmin(best, fmax(half, total - half));
        }
        assert_true(fmax(load[0], load[1]) <= best * 7 / 6 + 1e-9);
    }
    const double equal[4] = {5, 5, 5, 5};
    int32_t owner[4];
    dist_share(equal, 4, 4, owner);
    for (int i = 0; i < 4; i++) assert_int_equal(owner[i], i);
}

static void stretches_are_cut_evenly(void **state) {
    (void)state;
    double cost[100];
    for (int ranks = 1; ranks < 12; ranks++)
        for (int n = 0; n < 100; n += 9) {
            double total = 0, most = 0;
            int64_t first[16];
            for (int i = 0; i < n; i++) {
                total += cost[i] = 1 + (double)(random_bits(5, (uint64_t)n, (uint64_t)i) % 9);
                most = fmax(most, cost[i]);
            }
            dist_cut(cost, n, ranks, first);
            assert_int_equal(first[0], 0);
            assert_int_equal(first[ranks], n);
            for (int r = 0; r < ranks; r++) {
                double sum = 0;
                assert_true(first[r] <= first[r + 1]);
                for (int64_t i = first[r]; i < first[r + 1]; i++) sum += cost[i];
                assert_true(sum <= total / ranks + most);
            }
        }
}

static void launch_of(const char *variables, LaunchKind kind, int rank, int ranks, int local) {
    const pid_t child = fork();
    if (!child) {
        static const char *const all[] = {"OMPI_COMM_WORLD_RANK",
                                          "OMPI_COMM_WORLD_SIZE",
                                          "OMPI_COMM_WORLD_LOCAL_RANK",
                                          "PMI_RANK",
                                          "PMI_SIZE",
                                          "MPI_LOCALRANKID",
                                          "RANK",
                                          "WORLD_SIZE",
                                          "LOCAL_RANK",
                                          "SLURM_PROCID",
                                          "SLURM_STEP_NUM_TASKS",
                                          "SLURM_LOCALID"};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) unsetenv(all[i]);
        char *copy = strdup(variables);
        for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) putenv(word);
        const Launch l = launch_of_environment();
        _exit(!(l.kind == kind && l.rank == rank && l.ranks == ranks && l.local_rank == local));
    }
    int status;
    waitpid(child, &status, 0);
    if (status) fail_msg("%s: another launch", variables);
}

static void launchers_are_known(void **state) {
    (void)state;
    launch_of("", LAUNCH_ALONE, 0, 1, 0);
    launch_of("OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1", LAUNCH_MPI, 3, 4, 1);
    launch_of("PMI_RANK=1 PMI_SIZE=2", LAUNCH_MPI, 1, 2, 0);
    launch_of("RANK=5 WORLD_SIZE=8 LOCAL_RANK=1", LAUNCH_VARIABLES, 5, 8, 1);
    launch_of("SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=1", LAUNCH_MPI, 1, 2, 1);
    launch_of("SLURM_PROCID=0 SLURM_NTASKS=4", LAUNCH_ALONE, 0, 1, 0); /* the batch script itself */
    launch_of("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1", LAUNCH_ALONE, 0, 1, 0);
    launch_of("RANK=2", LAUNCH_ALONE, 0, 1, 0); /* a variable of another program */
    launch_of("RANK=9 WORLD_SIZE=8", LAUNCH_ALONE, 0, 1, 0);
    launch_of("RANK=1 WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=3", LAUNCH_MPI, 0, 3, 0);
}

/* With one rank the calls behave as in a single process. */
static void one_rank_is_no_rank(void **state) {
    (void)state;
    Error e;
    Dist d;
    double x[2] = {1, 2};
    int64_t first[2];
    assert_true(dist_open(&d, 1, backend_cpu(), models_device, &e));
    assert_int_equal(d.ranks, 1);
    dist_sum(&d, x, 2);
    dist_max(&d, x, 2);
    dist_min(&d, x, 2);
    assert_true(x[0] == 1 && x[1] == 2 && dist_total(&d, 3) == 3);
    assert_true(dist_any(&d, true) && !dist_any(&d, false) && dist_differs(&d, 7) == -1);
    void *all = dist_collect(&d, x, 2, sizeof *x, first);
    assert_memory_equal(all, x, sizeof x);
    assert_int_equal(first[1], 2);
    free(all);
    dist_close(&d);
}

static void memory_is_shared_out(void **state) {
    (void)state;
    const ModelConfig c = gpt2_config(12, 12, 768, 50257, 1024);
    const Backend *b = backend_cpu();
    size_t offset[TENSOR_COUNT], moments = 0, n;
    int layers;
    const size_t all = model_tensors(&c, (TensorInfo[TENSOR_COUNT]){{0}});
    for (int r = 0; r < 4; r++) {
        const Share share = {r, 4, 1};
        moments += optimizer_bytes_share(&c, b, share);
        optimizer_slices(&c, share, NULL, &n);
        assert_true(n > all / 4 - all / 50 && n < all / 4 + all / 50);
    }
    assert_int_equal(moments, optimizer_bytes(&c, b)); /* nothing twice, nothing omitted */
    assert_int_equal(model_grads_layout(&c, (Share){0, 4, 1}, offset, &layers), all);
    const size_t layer = 12 * 768 * 768 + 13 * 768;
    assert_int_equal(model_grads_layout(&c, (Share){0, 4, 2}, offset, &layers), all - 10 * layer);
    assert_int_equal(layers, 2);
}

/* ---- runs ------------------------------------------------------------------------------------------------------ */

/* The records of two runs are equal except for times; numbers agree to within a relative gap.
 *
 * The ranks sum gradients in another order, so these differ by rounding (1e-6 of their size). Steps of AdamW keep that
 * relative difference, except for gradients near 0, whose steps may differ by the whole rate. Fine-tuning keeps the
 * difference below 1e-4. Reinforcement learning divides by standard deviations of few rewards, and its KL is a
 * difference of nearly equal numbers: 2e-3. */
static void assert_near_metrics(const char *a, const char *b, double gap) {
    char *x = metrics_text(files_path(a)), *y = metrics_text(files_path(b));
    assert_int_equal(lines_of(x), lines_of(y));
    for (int i = 0; i < lines_of(x); i++) {
        json_t *row = json_line_of(x, i), *other = json_line_of(y, i), *value;
        const char *key;
        assert_int_equal(json_object_size(row), json_object_size(other));
        json_object_foreach(row, key, value) {
            if (strstr(key, "time") || strstr(key, "timing") || strstr(key, "perf/") || strstr(key, "num_tokens") ||
                strstr(key, "latency") || strstr(key, "parked_share") || !strcmp(key, "eps"))
                continue;
            const json_t *there = json_object_get(other, key);
            if (!there) fail_msg("%s: line %d has no %s", b, i, key);
            if (json_is_null(value) && json_is_null(there)) continue;
            const double p = json_number_value(value), q = json_number_value(there);
            if (!(fabs(p - q) <= gap * fmax(1, fabs(p))))
                fail_msg("line %d: %s is %.9g in %s and %.9g in %s", i, key, p, a, q, b);
        }
        json_decref(row), json_decref(other);
    }
    free(x), free(y);
}

#define NEEDS_MPI()                                                                                                    \
    (void)state;                                                                                                       \
    if (!mpi) {                                                                                                        \
        print_message("no mpirun or no llmc_mpi.so: skipped\n");                                                       \
        skip();                                                                                                        \
    }

static void sft_is_the_same_on_any_number_of_ranks(void **state) {
    NEEDS_MPI();
    sh(SFT "-x 12 -o $T/one.bin --metrics $T/one.jsonl");
    for (int zero = 0; zero <= 2; zero++) {
        sh("$RANKS 2 " SFT "-x 12 -o $T/two.bin --metrics $T/many.jsonl --zero %d", zero);
        assert_near_metrics("one.jsonl", "many.jsonl", 1e-4);
        assert_true(weights_gap("one.bin", "two.bin") < 1e-4);
        if (zero == 1) continue;
        sh("$RANKS 2 " SFT "-x 12 -o $T/again.bin --zero %d", zero);
        assert_same_file("two.bin", "again.bin"); /* a fixed order of sums: the same bits */
    }
    sh("$RANKS 4 " SFT "-x 12 -o $T/many.bin --metrics $T/many.jsonl --zero 1");
    assert_holds(said, "4 ranks of 1 thread,");
    assert_near_metrics("one.jsonl", "many.jsonl", 1e-4);
    assert_true(weights_gap("one.bin", "many.bin") < 1e-4);
    /* NEFTune's noise belongs to the record, not to the rank */
    sh(SFT "-x 6 -o $T/one.bin --metrics $T/one.jsonl --neftune-noise-alpha 5");
    sh("$RANKS 2 " SFT "-x 6 -o $T/many.bin --metrics $T/many.jsonl --neftune-noise-alpha 5");
    assert_near_metrics("one.jsonl", "many.jsonl", 1e-4);
    /* more ranks than records in a step: some ranks have no work */
    sh("./train_sft --layers 2 --width 32 --heads 2 --context 16 -i $T/chat.shard -x 4 --batch-tokens 8 -l 1e-2 "
       "-o $T/one.bin");
    sh("$RANKS 4 ./train_sft --layers 2 --width 32 --heads 2 --context 16 -i $T/chat.shard -x 4 --batch-tokens 8 "
       "-l 1e-2 -o $T/many.bin --zero 2");
    assert_true(weights_gap("one.bin", "many.bin") < 1e-4);
}

static void grpo_is_the_same_on_any_number_of_ranks(void **state) {
    NEEDS_MPI();
    static const char *const how[] = {
        "-x 8",
        "-x 9 --num-iterations 2 --steps-per-generation 3 --use-adaptive-entropy --dynamic-sampling --beta 0.1",
        "-x 5 --beta 0.1 --kl-in reward --loss-type gspo --top-entropy-quantile 0.5",
        "-x 6 --steps-per-generation 3 --loss-type clip_cov --clip-cov-ratio 0.1 --clip-cov-lb 0.01",
        "-x 6 --steps-per-generation 3 --loss-type kl_cov --kl-cov-ratio 0.2",
        "-x 6 --advantage-estimator optimal_token_baseline --positive-nll-coef 0.1 --num-remains-in-group 3",
        "-x 6 -i $T/given.shard --n-prefix 2 --steps-per-generation 3 --beta 0.1 --num-iterations 2",
        "-x 6 --advantage-estimator rae --steps-per-generation 3"};
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        sh(GRPO "%s -o $T/one.bin --metrics $T/one.jsonl", how[i]);
        sh("$RANKS %d " GRPO "%s -o $T/many.bin --metrics $T/many.jsonl --zero %d", i == 1 ? 4 : 2, how[i], (int)i % 3);
        assert_near_metrics("one.jsonl", "many.jsonl", 2e-3);
        for (int line = 0; line < metric_lines("one.jsonl"); line++) /* the same samples */
            if (has_metric("one.jsonl", line, "completions/mean_length"))
                assert_true(metric("one.jsonl", line, "completions/mean_length") ==
                            metric("many.jsonl", line, "completions/mean_length"));
        /* with --kl-in reward, the reward includes 0.1 times a KL that is the rounding error of about 10
         * log-probabilities */
        assert_near(metric("one.jsonl", 0, "reward"), metric("many.jsonl", 0, "reward"), i == 2 ? 1e-6 : 0);
    }
}

/* Trajectories: turns, calls, rewards of turns and what is made of them, with a program of its own on every rank. */
static void trajectories_are_the_same_on_any_number_of_ranks(void **state) {
    NEEDS_MPI();
    put("tool.sh",
        "exec sed -u -e 's/^{\"op\":\"hello\".*$/{\"op\":\"hello\",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\","
        "\"parameters\":{\"required\":[\"x\"]}}}]}/' "
        "-e 's/^{\"op\":\"call\"\\(.*\\)\"name\":.*\"x\":\"\\(.*\\)\"}.*\"id\":\\(\"[^\"]*\"\\)}$/"
        "{\"op\":\"call\"\\1\"content\":\"a\\2\",\"reward\":0.5,\"id\":\\3}/'\n");
    static const char *const how[] = {"--advantage-level gigpo --observation-ce 0.1",
                                      "--advantage-level turn --num-iterations 2 --llds-coef 0.5 --mask-error-turns"};
    for (int i = 0; i < 2; i++) {
#define TOOLS "-g 20 --tool-cmd 'sh $T/tool.sh' --tool-workers 1 --tool-format 'call=x{arguments}y;result=z{content}z' "
        sh(GRPO TOOLS "%s -x 4 -o $T/one.bin --metrics $T/one.jsonl", how[i]);
        sh("$RANKS 2 " GRPO TOOLS "%s -x 4 -o $T/many.bin --metrics $T/many.jsonl", how[i]);
        assert_near_metrics("one.jsonl", "many.jsonl", 2e-3);
        assert_true(weights_gap("one.bin", "many.bin") < 1e-3);
        assert_true(metric("one.jsonl", 0, "turns/mean") > 1);
        static const char *const same[] = {"turns/mean", "tools/f/calls", "completions/mean_length", "reward"};
        for (int k = 0; k < 4; k++) assert_true(metric("one.jsonl", 0, same[k]) == metric("many.jsonl", 0, same[k]));
    }
}

/* Programs that call the model by themselves: each rank has a server of its own. Failures on one rank are counted. */
static void agents_are_the_same_on_any_number_of_ranks(void **state) {
    NEEDS_MPI();
    if (access("/usr/include/microhttpd.h", F_OK)) skip();
    put("agent.py",
        "import json, os, sys, urllib.request\n"
        "text = json.loads(sys.stdin.readline())['prompt']\n"
        "for turn in range(2):\n"
        "    request = urllib.request.Request(os.environ['OPENAI_BASE_URL'] + '/completions',\n"
        "        json.dumps({'prompt': text, 'max_tokens': 4}).encode(), {'Content-Type': 'application/json'})\n"
        "    text += json.load(urllib.request.urlopen(request))['choices'][0]['text'] + '='\n"
        "print(len(text) % 4 / 4)\n");
#define AGENT                                                                                                          \
    "./train_grpo -c $T/base.bin -i $T/tasks.shard -g 20 -p 2 -G 2 -x 2 -l 1e-3 --sample-count 0 --reward none "
    sh(AGENT "--agent-cmd 'python3 $T/agent.py' -o $T/one.bin --metrics $T/one.jsonl");
    sh("$RANKS 2 " AGENT "--agent-cmd 'python3 $T/agent.py' -o $T/many.bin --metrics $T/many.jsonl");
    assert_near_metrics("one.jsonl", "many.jsonl", 2e-3);
    assert_true(weights_gap("one.bin", "many.bin") < 1e-3);
    static const char *const same[] = {"agents/requests", "agents/branches", "completions/mean_length", "reward"};
    for (int k = 0; k < 4; k++) assert_true(metric("one.jsonl", 0, same[k]) == metric("many.jsonl", 0, same[k]));
    sh("$RANKS 2 " AGENT "-o $T/many.bin --max-agent-failures 1 --agent-cmd 'test $OMPI_COMM_WORLD_RANK = 0 && "
       "exec python3 $T/agent.py; exit 3'");
    assert_holds(said, "2 of 4 runs of a program failed, and their completions have no reward: on another rank");
}

/* The other trainers: a reward model, PPO with a critic of its own, DPO. */
static void other_trainers_know_ranks(void **state) {
    NEEDS_MPI();
    static const struct {
        int ranks;
        const char *command;
    } cases[] = {
        {2,
         "./train_rm -c $T/base.bin -i $T/prefs.shard -i $T/ranked.shard -j $T/ranked.shard -x 4 -l 1e-3 --micro-tokens 64 "
         "--zero 1"},
        {3, "./train_dpo -c $T/base.bin -i $T/prefs.shard -x 4 -l 1e-3 --micro-tokens 64 --zero 2"},
        {2, "./train_ppo -c $T/base.bin --critic $T/rm.bin --reward-model $T/rm.bin --critic-warmup 2 "
            "--reward verify -i $T/tasks.shard -g 4 -p 6 --micro-tokens 96 -l 1e-3 --sample-count 0 -x 8 "
            "--num-mini-batches 3 --zero 1"},
        {2, "./train_ppo -c $T/base.bin --algo a2po --reward verify -i $T/tasks.shard -g 4 -p 6 --micro-tokens 96 "
            "-l 1e-3 --sample-count 0 -x 8 --beta2 0.1 --positive-nll-coef 0.1"},
        {3,
         "./train_ppo -c $T/base.bin --algo prime --prm-learning-rate 1e-3 --reward verify -i $T/tasks.shard -g 4 -p 6 "
         "--micro-tokens 96 -l 1e-3 --sample-count 0 -x 8 --num-mini-batches 3 --prm-update before --zero 2"}};
    FILE *prefs = fopen(files_path("prefs.jsonl"), "w");
    for (int p = 0; p < 26; p++)
        fprintf(prefs, "{\"prompt\":\"%.*s%c=\",\"chosen\":\"%d\",\"rejected\":\"%dx\"}\n", p % 4, "abc", 'a' + p,
                p % 10, (7 * p + 1) % 10);
    assert_int_equal(fclose(prefs), 0);
    sh("data/make_shard --quiet -i $T/prefs.jsonl -o $T/prefs.shard && data/make_prefs --format ranking --letters 3 "
       "--max-length 5 --num-completions 3 --count 20 | data/make_shard --quiet -i - -o $T/ranked.shard");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sh("%s -o $T/%s --metrics $T/one.jsonl", cases[i].command, i ? "one.bin" : "rm.bin");
        sh("$RANKS %d %s -o $T/many.bin --metrics $T/many.jsonl", cases[i].ranks, cases[i].command);
        assert_near_metrics("one.jsonl", "many.jsonl", 2e-3);
        assert_true(weights_gap(i ? "one.bin" : "rm.bin", "many.bin") < 1e-3);
    }
}

static void states_go_from_ranks_to_ranks(void **state) {
    NEEDS_MPI();
    sh(SFT "-x 20 -o $T/one.bin");
    sh("$RANKS 2 " SFT "-x 20 -o $T/two.bin --state $T/mid.state --save-steps 13 --zero 2");
    sh("$RANKS 2 " SFT "-x 20 -o $T/b.bin --resume $T/mid.state --zero 2");
    assert_same_file("two.bin", "b.bin"); /* as if it had not been interrupted */
    sh(SFT "-x 20 -o $T/b.bin --resume $T/mid.state");
    assert_true(weights_gap("one.bin", "b.bin") < 1e-3);
    sh("$RANKS 4 " SFT "-x 20 -o $T/b.bin --resume $T/mid.state --zero 1");
    assert_true(weights_gap("one.bin", "b.bin") < 1e-3);
}

static int times_said(const char *text) {
    int n = 0;
    for (const char *at = said; (at = strstr(at, text)); at++) n++;
    return n;
}

/* The n-th rank (from 0) of a run under mpirun: mpirun's children in the order of their start. */
static pid_t rank_of(pid_t launcher, int n) {
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)launcher, (int)launcher);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    if (!fgets(text, sizeof text, f)) fail_msg("the launcher has no children");
    fclose(f);
    char *word = strtok(text, " ");
    while (n-- > 0) word = strtok(NULL, " ");
    assert_non_null(word);
    return (pid_t)atoi(word);
}

/* One process goes on from the state $T/lost.state, makes steps, and stops at a signal. */
static void resumes_until_a_signal(const char *output_and_options) {
    char command[1000];
    unlink(files_path("resumed.jsonl"));
    snprintf(command, sizeof command, SFT "-x 100000 --resume $T/lost.state --metrics $T/resumed.jsonl -o %s",
             output_and_options);
    const pid_t resumed = run_start(command);
    run_until(files_path("resumed.jsonl"), 3);
    kill(resumed, SIGTERM);
    assert_int_equal(run_wait(resumed, 60), 0);
    assert_holds(said, "stopped by a signal after step ");
}

/* A long run of a trainer in which rank `which` gets a signal a moment after some steps. Sets `said` to what the ranks printed: into a file, because
 * mpirun may end before it has forwarded the last lines. grace: the seconds after which mpirun, when a rank has died, kills
 * the others, which on a busy machine need several to notice it and to report it. */
static void loses_a_rank(int signal, int which, int ranks, int grace, int steps, const char *trainer) {
    char command[1000];
    unlink(files_path("lost.jsonl")), unlink(files_path("lost.state")), unlink(files_path("ranks.err"));
    snprintf(command, sizeof command,
             "mpirun --mca odls_base_sigkill_timeout %d --oversubscribe --bind-to none -n %d sh -c 'exec %s "
             "--state $T/lost.state --metrics $T/lost.jsonl 2>>$T/ranks.err'",
             grace, ranks, trainer);
    const pid_t launcher = run_start(command);
    run_until(files_path("lost.jsonl"), steps);
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    kill(rank_of(launcher, which), signal);
    const time_t then = time(NULL);
    assert_true(run_wait(launcher, 120) != 0);
    assert_true(time(NULL) - then < 100);
    free(said);
    said = text_of(files_path("ranks.err"));
}

/* The same of ranks that share the moments: the last good state remains. */
static void leaves_the_last_state(int signal, int which, int ranks, const char *trainer, const char *part) {
    put("kept", "earlier");
    loses_a_rank(signal, which, ranks, signal == SIGKILL ? 10 : 2, 5, trainer);
    /* one rank reports it, once; on a busy machine another rank may report it instead */
    assert_in_range(times_said("train_sft: "), 1, (uintmax_t)ranks - 1);
    assert_holds(said, part);
    assert_holds(said, "; the run ends in step ");
    assert_holds(said, ", the last state is ");
    files_assert_content(files_path("kept"), "earlier", 7);
    unlink(files_path("kept"));
    /* the last good state is complete */
    resumes_until_a_signal("$T/after.bin --max-bad-steps 0 --best $T/best.bin");
}
/* A state after each step: the rank is as likely to be lost while the moments are gathered as in a step. */
#define ZERO SFT "-x 100000 -o $T/kept --save-steps 1 --zero 1 "

static void a_rank_that_dies_ends_the_run(void **state) {
    NEEDS_MPI();
    leaves_the_last_state(SIGKILL, 1, 2, ZERO "--dist-timeout 20", "rank 1 of 2 (process ");
    leaves_the_last_state(SIGKILL, 0, 2, ZERO "--dist-timeout 20", "rank 0 of 2 (process ");
}

static void a_rank_that_hangs_ends_the_run(void **state) {
    NEEDS_MPI();
    leaves_the_last_state(SIGSTOP, 2, 3, ZERO "--dist-timeout 6", "has not answered for 6 s (--dist-timeout)");
}

/* Without --zero, rank 0 has everything that the state needs, and writes it, and why the run failed, before the end. */
static void a_lost_rank_leaves_the_state(void **state) {
    NEEDS_MPI();
    loses_a_rank(SIGKILL, 1, 2, 10, 5, SFT "-x 100000 -o $T/lost.bin --dist-timeout 20");
    assert_holds(said, "state written to ");
    assert_holds(said, "rank 1 of 2 (process ");
    run(0,
        "tail -n 1 $T/lost.jsonl | grep '^{\"record\":\"end\".*\"status\":\"failed\".*\"reason\":\"rank 1 of 2 (process '");
    resumes_until_a_signal("$T/lost.bin");
}

/* The same in the evaluation of an RL trainer, which takes most of its time. */
static void a_rank_lost_in_evaluation(void **state) {
    NEEDS_MPI();
    loses_a_rank(SIGKILL, 1, 2, 5, 1,
                 GRPO "--eval-steps 1 --eval-samples 512 -x 1000 -o $T/lost.bin --dist-timeout 20");
    assert_holds(said, "state written to ");
    assert_holds(said, "rank 1 of 2 (process ");
}

/* Rank 1 has another file than rank 0, in the place of each input. */
static void files_that_differ_between_ranks(void **state) {
    NEEDS_MPI();
    sh("mkdir -p $T/rank0 $T/rank1 && cp $T/chat.shard $T/rank0/chat.shard && head -n 9 $T/chat.jsonl > $T/few.jsonl && "
       "data/make_shard --quiet -i $T/few.jsonl -o $T/rank1/chat.shard");
#define DIFFERS(i, j)                                                                                                  \
    "$RANKS 2 sh -c 'exec ./train_sft --layers 1 --width 32 --heads 2 --context 16 -x 2 -o $T/x.bin "                  \
    "-i $T/" i "chat.shard -j $T/" j "chat.shard'"
    run(1, DIFFERS("rank$OMPI_COMM_WORLD_RANK/", ""));
    assert_holds(said, "rank0/chat.shard: rank 1 differs from rank 0\n");
    run(1, DIFFERS("", "rank$OMPI_COMM_WORLD_RANK/"));
    assert_holds(said, "rank0/chat.shard: rank 1 differs from rank 0\n");
}

/* What is wrong on rank 1 only is said there; a rank that does not start does not keep the others waiting for ever. */
static void ranks_that_do_not_start(void **state) {
    NEEDS_MPI();
    run(2, "$RANKS 1 " SFT "-o $T/x.bin -x 4 : -n 1 " SFT "-o $T/x.bin --nonsense");
    assert_holds(said, "train_sft: rank 1: --nonsense: unknown");
    run(1, "$RANKS 1 " SFT "-o $T/x.bin -x 4 --dist-timeout 2 : -n 1 sleep 60");
    assert_holds(said, "train_sft: rank 0: not all of the 2 ranks have started within 2 s (--dist-timeout)");
}

#define FAMILY                                                                                                         \
    "./train_sft -c $T/family -i $T/chat.shard -l 1e-3 --batch-tokens 256 --micro-tokens 64 --weight-decay 0.1 -x 4 "

/* Trains a model of a family on one rank, and on two with --zero 1 and 2: metrics and weights are the same. */
static void family_is_the_same_on_two_ranks(const char *name, const char *more) {
    models_family(name, "family/", 5);
    sh(FAMILY "-o $T/one.safetensors --metrics $T/one.jsonl %s", more);
    for (int zero = 1; zero <= 2; zero++) {
        sh("$RANKS 2 " FAMILY "-o $T/many.safetensors --metrics $T/many.jsonl --zero %d %s", zero, more);
        assert_near_metrics("one.jsonl", "many.jsonl", 1e-4);
        const double gap = weights_gap("one.safetensors", "many.safetensors");
        if (!(gap < 1e-4)) fail_msg("%s %s, --zero %d: %g", name, more, zero, gap);
    }
}

/* Each family has tensors that others lack; two ranks update all of them as one does, also with adapters. */
static void families_are_the_same_on_two_ranks(void **state) {
    NEEDS_MPI();
    static const char *const name[] = {"llama-a", "qwen2", "qwen3-odd", "smollm3", "olmo2", "phi3", "gemma2", "gemma3"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++)
        family_is_the_same_on_two_ranks(name[i], i % 4 == 3 ? "--lora-rank 2" : "");
}

static void a_signal_on_any_rank_stops_all(void **state) {
    NEEDS_MPI();
    unlink(files_path("stop.jsonl"));
    const pid_t launcher =
        run_start("mpirun --oversubscribe --bind-to none -n 2 " SFT "-x 100000 -o $T/stop.bin --metrics $T/stop.jsonl");
    run_until(files_path("stop.jsonl"), 3);
    kill(rank_of(launcher, 1), SIGTERM);
    assert_int_equal(run_wait(launcher, 60), 0);
    assert_holds(said, "stopped by a signal after step");
    assert_int_equal(access(files_path("stop.bin.state"), R_OK), 0);
    assert_int_equal(access(files_path("stop.bin"), F_OK), -1);
}

/* The GPU path, compiled for the processor: started by mpirun, and by environment variables, so that ranks meet through
 * NCCL alone. */
static void ranks_on_gpus(void **state) {
    NEEDS_MPI();
    if (!getenv("LLMC_CUDA_LIBRARY")) skip();
    char *library = run_host_library();
    const bool built = !access(library, R_OK);
    if (built) {
        setenv("LLMC_CUDA_LIBRARY", library, 1);
        setenv("LLMC_NCCL_LIBRARY", library, 1);
    }
    free(library);
    if (!built) skip();
#define GPU                                                                                                            \
    "./train_sft --layers 3 --width 32 --heads 2 --context 16 -i $T/chat.shard -l 1e-2 --batch-tokens 64 "             \
    "--micro-tokens 32 --device cuda --dtype float32 -x 3 "
    sh(GPU "-o $T/one.bin --metrics $T/one.jsonl");
    for (int zero = 0; zero <= 2; zero++) {
        sh("$RANKS 2 " GPU "-o $T/many.bin --metrics $T/many.jsonl --zero %d", zero);
        assert_near_metrics("one.jsonl", "many.jsonl", 1e-4);
        assert_true(weights_gap("one.bin", "many.bin") < 1e-4);
    }
    /* bf16 weights, whose float32 masters are distributed over the ranks: a state contains all of them */
    sh("$RANKS 2 " GPU "-o $T/many.bin --dtype bf16 --zero 1 --state $T/gpu.state --save-steps 2");
    sh("$RANKS 2 " GPU "-o $T/again.bin --dtype bf16 --zero 2 --resume $T/gpu.state");
    assert_same_file("many.bin", "again.bin");
    sh("export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511; "
       "RANK=1 LOCAL_RANK=1 " GPU "-o $T/many.bin --zero 1 --save-steps 3 & "
       "RANK=0 LOCAL_RANK=0 " GPU "-o $T/many.bin --zero 1 --metrics $T/many.jsonl --state $T/gpu.state "
       "--save-steps 3; wait $!");
    assert_near_metrics("one.jsonl", "many.jsonl", 1e-4);
    assert_true(weights_gap("one.bin", "many.bin") < 1e-4);
    refused(1, "RANK=0 WORLD_SIZE=2 " GPU "-o $T/kept", "MASTER_ADDR and MASTER_PORT are not");
    family_is_the_same_on_two_ranks("qwen3-odd", "--device cuda -x 2");
    family_is_the_same_on_two_ranks("gemma3", "--device cuda -x 2");
    unsetenv("LLMC_NCCL_LIBRARY");
}

static void what_cannot_be_is_said_once(void **state) {
    NEEDS_MPI();
    put("kept", "earlier");
    static const struct {
        int status;
        const char *command, *part;
    } cases[] = {{2, SFT "-o $T/kept --zero 3", "--zero"},
                 {2, SFT "-o $T/kept -c -", "-: 2 ranks cannot share standard input"},
                 {1, SFT "-o $T/none/kept -x 1", "none"},
                 {1, "./train_sft -c $T/none.bin -i $T/chat.shard -o $T/kept", "none.bin"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char command[1200];
        snprintf(command, sizeof command, "mpirun --oversubscribe --bind-to none -n 2 %s", cases[i].command);
        run(cases[i].status, command);
        assert_int_equal(times_said("train_sft: "), 1);
        assert_holds(said, cases[i].part);
    }
    files_assert_content(files_path("kept"), "earlier", 7);
    unlink(files_path("kept"));
    refused(1, "RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=29500 " SFT "-o $T/kept",
            "start ranks on processors");
    /* ranks with different options */
    run(1, "mpirun --oversubscribe --bind-to none -n 1 " SFT "-o $T/x.bin -x 4 : -n 1 " SFT "-o $T/x.bin -x 5");
    assert_holds(said, "train_sft: options: rank 1 differs from rank 0\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(slices_cover_everything_once),
                                       cmocka_unit_test(work_is_shared_out_evenly),
                                       cmocka_unit_test(stretches_are_cut_evenly),
                                       cmocka_unit_test(launchers_are_known),
                                       cmocka_unit_test(one_rank_is_no_rank),
                                       cmocka_unit_test(memory_is_shared_out),
                                       cmocka_unit_test(sft_is_the_same_on_any_number_of_ranks),
                                       cmocka_unit_test(families_are_the_same_on_two_ranks),
                                       cmocka_unit_test(grpo_is_the_same_on_any_number_of_ranks),
                                       cmocka_unit_test(trajectories_are_the_same_on_any_number_of_ranks),
                                       cmocka_unit_test(agents_are_the_same_on_any_number_of_ranks),
                                       cmocka_unit_test(other_trainers_know_ranks),
                                       cmocka_unit_test(states_go_from_ranks_to_ranks),
                                       cmocka_unit_test(a_rank_that_dies_ends_the_run),
                                       cmocka_unit_test(a_rank_that_hangs_ends_the_run),
                                       cmocka_unit_test(a_lost_rank_leaves_the_state),
                                       cmocka_unit_test(a_rank_lost_in_evaluation),
                                       cmocka_unit_test(files_that_differ_between_ranks),
                                       cmocka_unit_test(ranks_that_do_not_start),
                                       cmocka_unit_test(a_signal_on_any_rank_stops_all),
                                       cmocka_unit_test(ranks_on_gpus),
                                       cmocka_unit_test(what_cannot_be_is_said_once)};
    return cmocka_run_group_tests_name("dist", tests, setup, models_teardown);
}
