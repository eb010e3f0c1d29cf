/* test_roles.c - completions of a prompt that play against one another through a program of --tool-cmd: the game of
 * scripts/kuhn.py with few and many slots and workers; a player who waits longer than --tool-timeout; a worker that dies; roles
 * that are none; what a program shows before the first turn; figures of roles.
 *
 * The model is made here. Needs ./train_sft, ./train_grpo, ./generate, ./evaluate, data/make_shard and data/show. */
#include "../llmc/base/clock.h" /* clock_seconds */
#include "files.h"              /* files_path, text_of, files_directory, files_setup, ... */
#include "shell.h"              /* run, assert_holds, said, out, ... */
#include <jansson.h>
#include <math.h>

#define KUHN     "--tool-cmd 'python3 scripts/kuhn.py' "
#define GENERATE "./generate -c $T/sft.bin -i $T/tasks.shard -g 100 --num-samples 4 --temperature 1 "

static int setup(void **state) {
    if (files_setup(state) || setenv("T", files_directory, 1)) return 1;
    put("row.jsonl", "{\"prompt\":\"Kuhn poker: \",\"answer\":\"\",\"task\":\"game\"}\n");
    run(0, "python3 scripts/kuhn.py demos 500 | data/make_shard --quiet -i - -o $T/sft.shard --template chatml; cd $T; "
           "cat row.jsonl row.jsonl >two.jsonl; cat two.jsonl two.jsonl two.jsonl two.jsonl >tasks.jsonl");
    run(0, "data/make_shard --quiet -i $T/row.jsonl -o $T/one.shard --template chatml && "
           "data/make_shard --quiet -i $T/two.jsonl -o $T/two.shard --template chatml && "
           "data/make_shard --quiet -i $T/tasks.jsonl -o $T/tasks.shard --template chatml");
    run(0,
        "./train_sft --layers 1 --width 64 --heads 2 --context 160 -i $T/sft.shard -x 60 --batch-tokens 2048 -l 5e-3 "
        "-o $T/sft.bin");
    return 0;
}

/* The rewards of each pair of samples are a zero-sum game between two roles. Returns the number of games. */
static int zero_sum(const char *rows) {
    int games = 0;
    double first = 0;
    char *copy = strdup(rows);
    for (char *line = strtok(copy, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *row = json_loads(line, JSON_ALLOW_NUL, NULL);
        const int sample = (int)json_integer_value(json_object_get(row, "sample"));
        double reward = 0;
        size_t i;
        json_t *value;
        json_array_foreach(json_object_get(row, "turn_rewards"), i, value) reward += json_number_value(value);
        reward += json_number_value(json_object_get(row, "end_reward")); /* of a player that a limit cut off */
        assert_string_equal(json_string_value(json_object_get(row, "role")), sample % 2 ? "player1" : "player0");
        if (sample % 2) {
            assert_true(reward == -first);
            games++;
        }
        first = reward;
        json_decref(row);
    }
    free(copy);
    return games;
}

/* Removes the log-probabilities from rows, whose last digits depend on the size of the batches. */
static void without_logprobs(char *rows) {
    char *to = rows;
    for (const char *from = rows; *from;)
        if (!strncmp(from, "\"logprob\":", 10)) from += strcspn(from, ",") + 1;
        else *to++ = *from++;
    *to = 0;
}

/* Games between samples: the same rows for as many slots as players and one worker, and for many of both; fewer slots are
 * refused. A sample without a partner plays against the program. */
static void test_games(void **state) {
    (void)state;
    run(0, GENERATE KUHN "--slots 4 --tool-workers 1");
    char *few = strdup(out);
    assert_int_equal(zero_sum(few), 16);
    without_logprobs(few);
    run(0, GENERATE KUHN "--slots 64 --tool-workers 3");
    without_logprobs(out);
    assert_string_equal(out, few);
    free(few);
    run(0, GENERATE KUHN "--num-samples 3");
    assert_holds(out, "\"sample\":2,");
    assert_null(strstr(out, "tool_failed"));
    run(1, GENERATE KUHN "--slots 3");
    assert_holds(said, "4 samples, which may wait for one another, need as many slots (--slots 3)");
    run(1,
        "./train_grpo -c $T/sft.bin -i $T/tasks.shard -p 2 -G 4 -g 100 -x 1 --slots 3 --reward none -o $T/no.bin " KUHN);
    assert_holds(said, "--num-generations: the 4 completions of a prompt may wait for one another");
}

/* Writes a program of two players. At a step, `turn` is a Python statement that may set its answer. */
static void put_players(const char *name, const char *hello, const char *reset, const char *step, const char *end) {
    char text[2000];
    snprintf(text, sizeof text,
             "import json, os, sys, time\n"
             "held = {}\n"
             "for line in sys.stdin:\n"
             "    r = json.loads(line)\n"
             "    a = {k: r[k] for k in ('op', 'id', 'turn') if k in r}\n"
             "    out = [a]\n"
             "    if r['op'] == 'hello': a.update(episodes=True, text=True); a.update(%s)\n"
             "    group, sample = (int(n) for n in r.get('id', '0.0').split('.'))\n"
             "    if r['op'] == 'reset': %s\n"
             "    if r['op'] == 'step': %s\n"
             "    if r['op'] == 'end': %s\n"
             "    for one in out: print(json.dumps(one), flush=True)\n",
             hello, reset, step, end);
    put(name, text);
}

/* The first player waits until the second one has had three turns, which takes longer than --tool-timeout: only while all
 * players wait is the program late. */
static void test_waiting(void **state) {
    (void)state;
    const double start = clock_seconds();
    put_players(
        "slow.py", "group=True", "pass",
        "held[sample] = a; out = []; (time.sleep(1.1), a.update(observation='K '), out.append(a)) if sample and "
        "r['turn'] < 3 else None; out = [dict(h, done=True, reward=1) for h in held.values()] if r['turn'] == 3 else out",
        "pass");
    run(0, "./generate -c $T/sft.bin -i $T/one.shard -g 150 --num-samples 2 --temperature 0.5 --tool-timeout 3 "
           "--tool-cmd 'python3 $T/slow.py' --max-tool-failures 0");
    assert_true(clock_seconds() - start > 3.2);
    /* and a program that answers nobody is late */
    put_players("silent.py", "group=True", "pass", "out = []", "pass");
    run(1, "./generate -c $T/sft.bin -i $T/one.shard -g 150 --num-samples 2 --tool-timeout 0.3 "
           "--tool-cmd 'python3 $T/silent.py'");
    assert_holds(said, "no answer in 0.3 seconds");
}

/* The worker of one group dies: the whole group is lost at once, also a player whose turns had not reached the program, and
 * the group of the other worker is not. */
static void test_dead_worker(void **state) {
    (void)state;
    put_players("dies.py", "group=True", "a.update(role='p%d' % sample)",
                "os._exit(1) if group == 0 else a.update(done=True, reward=0)", "pass");
    run(0, "./generate -c $T/sft.bin -i $T/two.shard -g 100 --num-samples 4 --temperature 1 --tool-workers 2 "
           "--tool-timeout 20 --max-tool-failures 1 --tool-cmd 'python3 $T/dies.py' >$T/rows; "
           "grep -c tool_failed $T/rows; grep -c '\"stop\":\"tool_stopped\".*\"role\":\"p[0-3]\"' $T/rows");
    assert_string_equal(out, "4\n4\n");
}

/* The list of integers `key` of the first row. */
static json_t *list_of(const char *key) {
    json_t *row = json_loadb(out, strcspn(out, "\n"), 0, NULL), *list = json_incref(json_object_get(row, key));
    assert_true(json_is_array(list));
    json_decref(row);
    return list;
}

static json_int_t item(const json_t *list, size_t i) { return json_integer_value(json_array_get(list, i)); }

#define ONE                                                                                                            \
    "./generate -c $T/sft.bin -i $T/one.shard -g 100 --temperature 0 --tool-workers 1 --tool-cmd 'python3 $T/opens.py' "

/* What a program shows before the first turn follows the content of the prompt's message, as tokens that are observed; a program
 * that shows nothing changes no token. What is shown must have a place and room. */
static void test_opening(void **state) {
    (void)state;
    static const char *const done = "a['done'] = True";
    put_players("opens.py", "group=False", "pass", done, "pass");
    run(0, ONE);
    json_t *plain = list_of("tokens");
    put_players("opens.py", "opening=True", "a['observation'] = None", done, "pass");
    run(0, ONE);
    json_t *empty = list_of("tokens"), *runs = list_of("drawn");
    const size_t held = json_array_size(empty) - json_array_size(plain); /* <|im_end|>\n<|im_start|>assistant\n */
    assert_true(json_array_size(runs) == 3 && item(runs, 0) == 0 && item(runs, 1) == (json_int_t)held);
    assert_int_equal(held, 13);
    for (size_t i = 0; i < json_array_size(plain); i++) assert_int_equal(item(empty, held + i), item(plain, i));
    json_decref(plain), json_decref(runs);
    put_players("opens.py", "opening=True", "a['observation'] = 'K b'", done, "pass");
    run(0, ONE);
    json_t *shown = list_of("tokens");
    for (size_t i = 0; i < held + 3; i++) assert_int_equal(item(shown, i), i < 3 ? "K b"[i] : item(empty, i - 3));
    assert_holds(out, "\"messages\":[{\"role\":\"user\",\"content\":\"Kuhn poker: K b\"},{\"role\":\"assistant\"");
    json_decref(empty), json_decref(shown);
    run(0, "./generate -c $T/sft.bin -g 100 --temperature 0 --verbose --tool-cmd 'python3 $T/opens.py' 'Kuhn poker: '");
    assert_true(!strncmp(out, "K b", 3));
    put_players("opens.py", "group=False", "a['observation'] = ''", done, "pass"); /* shows nothing */
    run(0, ONE);
    static const char *const bad[][3] = {
        {"group=False", "a['observation'] = 'K b'",
         "its answer to a reset has an observation, for which the model's first turn does not wait; its hello must have"},
        {"group=False", "a.update(observation='K b', tools=None)", "its answer to a reset has an observation, for"},
        {"group=False", "a['tools'] = []", "its answer to a reset has tools, for"},
        {"opening=True", "a['tools'] = ['search']",
         "the answer to a reset has \"tools\", but a program answers the whole turns"},
        {"opening=True, episodes=False", "pass", "its hello has \"opening\" without \"episodes\""},
        {"opening=True", "a['observation'] = 5", "the \"observation\" of an answer is no text"},
        {"opening=True", "a['observation'] = 'x' * 90",
         "what follows the prompt after a reset has 103 tokens, which a completion has no room for"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_players("opens.py", bad[i][0], bad[i][1], done, "pass");
        run(1, ONE);
        assert_holds(said, bad[i][2]);
    }
    run(1,
        "data/make_shard --quiet -i $T/row.jsonl -o $T/other.shard --template '{any}{content}{assistant}:{content}{eos}'; "
        "./generate -c $T/sft.bin -i $T/other.shard --tool-cmd 'python3 $T/opens.py'");
    assert_holds(said, "prompt 1: it does not end as the model's chat template ends a user's message");
    /* every second completion is lost before it has a token, and has no reward */
    put_players("opens.py", "opening=True", "a['observation'] = 'K ' if sample % 2 else 5",
                "a.update(done=True, reward=len(r['text']) % 3)", "pass");
    run(0, "./train_grpo -c $T/sft.bin -i $T/tasks.shard -p 2 -G 4 -g 100 -x 2 --reward none -o $T/grpo.bin --metrics "
           "$T/m.jsonl --rollouts $T/r.jsonl --rollout-steps 2 --max-tool-failures 1 --tool-cmd 'python3 $T/opens.py'");
    assert_holds(
        said,
        "4 of 8 completions were lost because a tool failed, and have no reward: --tool-cmd: the \"observation\"");
    char *metrics = text_of(files_path("m.jsonl"));
    assert_holds(metrics, "\"tools/infrastructure_failures\":4");
    free(metrics);
    remove(files_path("r.jsonl"));
}

/* evaluate reports the mean reward, and that of each role. */
static void test_evaluate(void **state) {
    (void)state;
    run(0, "./evaluate -c $T/sft.bin -i $T/tasks.shard -g 100 --num-samples 4 " KUHN);
    json_t *figures = json_loads(out, 0, NULL), *roles = json_object_get(figures, "roles");
    const json_t *first = json_object_get(roles, "player0"), *second = json_object_get(roles, "player1");
    const double reward = json_number_value(json_object_get(first, "reward"));
    assert_true(reward != 0 && json_number_value(json_object_get(second, "reward")) == -reward);
    assert_true(json_number_value(json_object_get(second, "share")) == 0.5);
    assert_true(json_number_value(json_object_get(second, "reward_error")) > 0);
    assert_true(fabs(json_number_value(json_object_get(figures, "reward"))) < 1e-12);
    assert_holds(said, "role player1: 50.0 % of the completions, reward ");
    json_decref(figures);
}

/* Names that are none make a completion a lost one, like other answers that are wrong. */
static void test_bad_names(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"a['role'] = 5", "pass", "the \"role\" of an answer is no text"},
        {"a['role'] = ''", "pass", "the \"role\" of an answer has 0 bytes, expected 1 to 63"},
        {"a['role'] = 'x' * 64", "pass", "the \"role\" of an answer has 64 bytes, expected 1 to 63"},
        {"a['role'] = 'a' + chr(10)", "pass", "the \"role\" of an answer has a control character"},
        {"a['episode'] = [1]", "pass", "the \"episode\" of an answer is no text"},
        {"a['role'] = 'a'", "a['role'] = 'b'", "the \"role\" of a completion changes from 'a' to 'b'"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_players("names.py", "group=False", cases[i][0], "a['done'] = True", cases[i][1]);
        run(1, GENERATE "--tool-workers 1 --tool-cmd 'python3 $T/names.py'");
        assert_holds(said, "were lost because a tool failed (--max-tool-failures 0.1): --tool-cmd: ");
        assert_holds(said, cases[i][2]);
    }
    put_players("names.py", "group=False", "a['role'] = 'x' * 63", "a['done'] = True",
                "a.update(role='x' * 63, episode='e')");
    run(0, GENERATE "--tool-workers 1 --tool-cmd 'python3 $T/names.py'");
    assert_holds(out, "xxx\",\"episode\":\"e\"}");
    put_players("names.py", "group=True, episodes=False", "pass", "pass", "pass");
    run(1, GENERATE "--tool-cmd 'python3 $T/names.py'");
    assert_holds(said, "its hello has \"group\" without \"episodes\"");
}

/* Roles in metrics and rollouts. */
static void test_metrics(void **state) {
    (void)state;
    run(0, "./train_grpo -c $T/sft.bin -i $T/tasks.shard -p 2 -G 4 -g 100 -x 2 --reward none -o $T/grpo.bin --metrics "
           "$T/m.jsonl --rollouts $T/r.jsonl --rollout-steps 2 " KUHN "&& data/show $T/r.jsonl");
    assert_holds(out, "[0] player0  reward ");
    char *metrics = text_of(files_path("m.jsonl")), *rows = text_of(files_path("r.jsonl"));
    const char *first = strstr(metrics, "\"role/player0/reward\":"),
               *second = strstr(metrics, "\"role/player1/reward\":");
    assert_true(first && second && strtod(first + 22, NULL) == -strtod(second + 22, NULL));
    assert_holds(metrics, "\"role/player1/share\":0.5");
    const char *gap = strstr(metrics, "\"sampling/sampling_logp_difference/max\":");
    assert_true(gap && strtod(gap + 39, NULL) < 1e-4); /* with what was shown before the first turn */
    assert_holds(rows, "\"role\":\"player1\"");
    free(metrics), free(rows);
}

#define GRPO "./train_grpo -c $T/sft.bin -i $T/tasks.shard -g 100 -l 1e-3 --warmup-steps 0 "

/* A number of a line of the metrics; NaN: it is not there. */
static double metric(int line, const char *key) {
    char *text = text_of(files_path("m.jsonl")), *at = strstr(text, "{\"step\":"), name[80];
    for (int i = 0; i < line; i++) at = strstr(at + 1, "{\"step\":");
    snprintf(name, sizeof name, "\"%s\":", key);
    const char *end = strchr(at, '\n'), *value = strstr(at, name);
    const double x = value && (!end || value < end) ? strtod(value + strlen(name), NULL) : NAN;
    free(text);
    return x;
}

/* The baselines of a run are the moving averages of its rewards, and those of a resumed run to the bit. */
static void test_rae(void **state) {
    (void)state;
    run(0, GRPO
        "-p 1 -G 2 -x 4 -o $T/rae.bin --advantage-estimator rae --rae-decay 0.5 --reward none --metrics $T/m.jsonl " KUHN);
    double baseline[2] = {0};
    for (int line = 0; line < 4; line++)
        for (int k = 0; k < 2; k++) {
            char key[2][40];
            snprintf(key[0], sizeof key[0], "role/player%d/reward", k);
            snprintf(key[1], sizeof key[1], "role/player%d/baseline", k);
            baseline[k] = 0.5 * baseline[k] + 0.5 * metric(line, key[0]);
            assert_true(fabs(metric(line, key[1]) - baseline[k]) < 1e-6);
        }
    assert_true(baseline[0] != 0 && baseline[0] == -baseline[1]);
    run(0, GRPO
        "-p 2 -G 4 -x 6 -o $T/whole.bin --advantage-estimator rae --reward none --state $T/run.state --save-steps 3 " KUHN
        "&& " GRPO "-p 2 -G 4 -x 6 -o $T/parts.bin --advantage-estimator rae --reward none --resume $T/run.state " KUHN
        "&& cmp $T/whole.bin $T/parts.bin");
    assert_holds(said, "resume");
    /* without roles there is one baseline, which is said once */
    run(0, GRPO "-p 2 -G 4 -x 3 -o $T/rae.bin --advantage-estimator rae --reward length=0/10 --metrics $T/m.jsonl");
    const char *warning = strstr(said, "no completion has a role, so that all have one baseline");
    assert_true(warning && !strstr(warning + 1, "no completion has a role") && !isnan(metric(2, "role/baseline")));
}

/* Two proposed problems with a proposer and two solvers each: the advantages of the rollouts are the rewards minus the means of
 * what each is compared with. What lacks a role or an episode ends the run. */
static void test_hierarchical(void **state) {
    (void)state;
#define HIERARCHICAL                                                                                                   \
    GRPO                                                                                                               \
        "-p 1 -G 6 -x 1 -o $T/h.bin --reward none --advantage-estimator hierarchical_grpo --tool-cmd 'python3 $T/h.py' "
    static const double reward[] = {1, 2, 5, 9, 7, 4}, solver[] = {-4, -1.5, 1.5, 4, 1.5, -1.5},
                        both[] = {0, -1.5, 1.5, 0, 1.5, -1.5};
    put_players("h.py", "group=True",
                "a.update(role='solver' if sample % 3 else 'proposer', episode='e%d' % (sample // 3))",
                "a.update(done=True, reward=[1, 2, 5, 9, 7, 4][sample])", "pass");
    for (int k = 0; k < 2; k++) {
        char command[600];
        snprintf(command, sizeof command, HIERARCHICAL "--rollouts $T/h.jsonl --rollout-steps 2 --episode-agents %s",
                 k ? "solver,proposer" : "solver");
        run(0, command);
        char *rows = text_of(files_path("h.jsonl")), *line = strstr(rows, "\"kind\":\"trained\"");
        while (line > rows && line[-1] != '\n') line--;
        json_t *group = json_loadb(line, strcspn(line, "\n"), 0, NULL), *samples = json_object_get(group, "samples");
        assert_int_equal(json_array_size(samples), 6);
        for (size_t i = 0; i < 6; i++) {
            const json_t *s = json_array_get(samples, i);
            assert_true(json_number_value(json_object_get(s, "reward")) == reward[i]);
            assert_true(json_number_value(json_object_get(s, "advantage")) == (k ? both : solver)[i]);
        }
        json_decref(group);
        free(rows);
    }
    run(0, HIERARCHICAL "--episode-agents solver,critic");
    assert_holds(said, "--episode-agents: no completion has the role 'critic'");
    run(2, HIERARCHICAL);
    assert_holds(said, "give --episode-agents, the roles that are compared within an episode");
    put_players("h.py", "group=True", "a['role'] = 'solver'", "a.update(done=True, reward=1)", "pass");
    run(1, HIERARCHICAL "--episode-agents solver");
    assert_holds(said, "--episode-agents: a completion with the role 'solver' has no episode");
    put_players("h.py", "group=True", "pass", "a.update(done=True, reward=1)", "pass");
    run(1, HIERARCHICAL "--episode-agents solver");
    assert_holds(said, "--advantage-estimator hierarchical_grpo: a completion has no role");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_games),   cmocka_unit_test(test_waiting),  cmocka_unit_test(test_dead_worker),
        cmocka_unit_test(test_opening), cmocka_unit_test(test_evaluate), cmocka_unit_test(test_bad_names),
        cmocka_unit_test(test_metrics), cmocka_unit_test(test_rae),      cmocka_unit_test(test_hierarchical)};
    return cmocka_run_group_tests_name("roles", tests, setup, files_teardown);
}
