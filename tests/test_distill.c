/* test_distill.c - distillation: the gradients of two models' divergence, and the trainers with a teacher as a user runs
 * them. Needs train_sft, train_rm, train_grpo, evaluate and data/. */
#include "../llmc/base/error.h"            /* Error, xmalloc, xcalloc */
#include "../llmc/base/io.h"               /* XXH3_64bits */
#include "../llmc/base/random.h"           /* random_real, Random, random_start, random_below, ... */
#include "../llmc/cpu/cpu.h"               /* backend_cpu */
#include "../llmc/loss/policy.h"           /* policy_loss, POLICY_CISPO, POLICY_DAPO, POLICY_GRPO, ... */
#include "../llmc/model/backend.h"         /* TOKEN_DIVERGENCE_KINDS, TOKEN_FORWARD_KL, TOKEN_JSD, ... */
#include "../llmc/model/batch.h"           /* Batch */
#include "../llmc/model/divergence.h"      /* ModelDivergence, DivergenceOutput, model_divergence, ... */
#include "../llmc/model/model.h"           /* Model, model_free, model_upload, model_download, ... */
#include "../llmc/model/model_file.h"      /* model_load */
#include "../llmc/model/model_load.h"      /* ModelFile, model_file_free */
#include "../llmc/model/pack.h"            /* batch_free, batch_new, batch_sequence, batch_clear */
#include "../llmc/model/transformer.h"     /* model_logits, ModelOutput */
#include "../llmc/model/workspace.h"       /* Workspace, workspace_free, workspace_new */
#include "../llmc/records/shard.h"         /* Record, Shard, record_free, shard_close, ... */
#include "../llmc/records/teacher_table.h" /* teacher_table_open, TeacherTable, TeacherRow, teacher_row_bytes, ... */
#include "../llmc/report/token_page.h"     /* TOKEN_PAGE_TOKENS, TokenRow, token_page_add, TokenPage, ... */
#include "../llmc/train/distiller.h"       /* DISTILL_MINILLM, DISTILL_SAMPLED, Distiller, distiller_advantages */
#include "../llmc/train/generation.h"      /* GenerationSlice */
#include "../llmc/train/teacher_lists.h"   /* teacher_row_of */
#include "divergence.h"                    /* divergence_formula, divergence_softmax */
#include "files.h"                         /* files_path, text_of, files_put, files_get, ... */
#include "letters.h"                       /* letters_setup */
#include "models.h"                        /* refused, assert_near, MODELS_VOCAB, models_new, ... */
#include "page.h"                          /* assert_page */
#include "run.h"                           /* sh, metric, metric_mean, weights_gap, ... */
#include "shell.h"                         /* assert_holds, put, run */

/* ---- the model's gradients ------------------------------------------------------------------------------------- */

/* sum_r weight_r D_r in float64, from the logits of both models. */
static double total_divergence(const Model *student, const Workspace *w, const Model *teacher, const Workspace *tw,
                               const Batch *b, const ModelDivergence *d, const float *weight) {
    Error e;
    enum { V = MODELS_VOCAB };
    const size_t n = (size_t)b->targets * V;
    float *z = (float *)xmalloc(2 * n * sizeof *z), *u = z + n;
    assert_true(model_logits(student, w, b, z, &e) && model_logits(teacher, tw, b, u, &e));
    double sum = 0, row[V], logp[V], S[V], T[V];
    for (int32_t r = 0; r < b->targets; r++) {
        for (int v = 0; v < V; v++) row[v] = z[(size_t)r * V + (size_t)v];
        divergence_softmax(row, V, d->temperature, logp, S);
        for (int v = 0; v < V; v++) row[v] = u[(size_t)r * V + (size_t)v];
        divergence_softmax(row, V, d->temperature, logp, T);
        sum += (double)weight[r] * divergence_formula(d->kind, S, T, V, d->beta, d->temperature, row);
    }
    free(z);
    return sum;
}

/* The change of the sum of divergences along the gradient is the square of its length: a central difference whose steps
 * change the sum by some thousandths; float32 logits are exact to 1e-6 of the sum; tvd has kinks. The teacher has another shape. */
static void gradients(void **state) {
    (void)state;
    Error e;
    enum { ROWS = 24 };
    Random r = random_start(5, 0);
    Model student = models_new(2, 16, 16), teacher = models_new(1, 32, 20);
    Workspace w, tw;
    assert_true(model_new_grads(&student, &e));
    const size_t n = student.parameters;
    float *at = (float *)xmalloc(n * sizeof *at), *g = (float *)xmalloc(n * sizeof *g),
          *to = (float *)xmalloc(n * sizeof *to);
    model_download(&student, 0, at, n);
    for (size_t i = 0; i < n; i++) at[i] *= 4; /* not close to uniform distributions */
    model_upload(&student, 0, at, n);
    assert_true(workspace_new(&w, &student, ROWS, ROWS, ROWS, true, 0, &e));
    assert_true(workspace_new(&tw, &teacher, ROWS, ROWS, ROWS, false, 0, &e));
    Batch b = batch_new(ROWS, ROWS, ROWS);
    int32_t tokens[12];
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < 12; i++) tokens[i] = (int32_t)random_below(&r, MODELS_VOCAB);
        batch_sequence(&b, tokens, NULL, 12);
    }
    float weight[ROWS], value[ROWS], again[ROWS], logp[ROWS];
    for (int i = 0; i < b.targets; i++) weight[i] = (float)random_real(&r);
    for (int kind = 0; kind < TOKEN_DIVERGENCE_KINDS; kind++) {
        const ModelDivergence d = {
            .teacher = &teacher, .work = &tw, .kind = (TokenDivergenceKind)kind, .temperature = 0.8f, .beta = 0.3f};
        const ModelOutput out = {.logp = logp};
        const DivergenceOutput apart = {.value = value}, same = {.value = again};
        student.backend->zero(student.device, student.grads, n * sizeof *g);
        model_divergence_both(&student, &w, &b, &d, NULL, 1.0f, weight, NULL, &out, &apart);
        double sum = 0, square = 0;
        for (int i = 0; i < b.targets; i++) sum += (double)weight[i] * value[i];
        assert_near(sum, total_divergence(&student, &w, &teacher, &tw, &b, &d, weight), 1e-5 * sum);
        student.backend->download(student.device, g, student.grads, n * sizeof *g);
        for (size_t i = 0; i < n; i++) square += (double)g[i] * g[i];
        const double step = 0.002 * sum / square;
        double side[2];
        for (int k = 0; k < 2; k++) {
            for (size_t i = 0; i < n; i++) to[i] = at[i] + (float)((k ? step : -step) * g[i]);
            model_upload(&student, 0, to, n);
            side[k] = total_divergence(&student, &w, &teacher, &tw, &b, &d, weight);
        }
        model_upload(&student, 0, at, n);
        assert_near((side[1] - side[0]) / (2 * step), square, (kind == TOKEN_TVD ? 2e-2 : 5e-3) * square);
        /* in two passes: the same bits */
        student.backend->zero(student.device, student.grads, n * sizeof *g);
        model_divergence(&student, &w, &b, &d, NULL, 1.0f, &out, &same);
        model_divergence_backward(&student, &w, &b, &d, 1.0f, weight, NULL, NULL);
        student.backend->download(student.device, to, student.grads, n * sizeof *g);
        assert_memory_equal(value, again, (size_t)b.targets * sizeof *value);
        assert_memory_equal(g, to, n * sizeof *g);
    }
    free(at), free(g), free(to);
    batch_free(&b);
    workspace_free(&w, &student), workspace_free(&tw, &teacher);
    model_free(&student), model_free(&teacher);
}

/* ---- train_sft ------------------------------------------------------------------------------------------------- */

static int setup(void **state) {
    if (letters_setup(state)) return 1;
    setenv("OMP_NUM_THREADS", "1", 1);
    sh("./train_sft --layers 2 --width 64 --heads 2 --context 48 -i $T/chat.shard -o $T/teacher.bin -x 60 -l 3e-3 "
       "--batch-tokens 400");
    sh("./train_sft --layers 1 --width 32 --heads 2 --context 48 -i $T/chat.shard -o $T/base.bin -x 20 -l 3e-3 "
       "--batch-tokens 400");
    return 0;
}

#define STUDENT "./train_sft -c $T/base.bin -i $T/chat.shard -l 3e-3 --batch-tokens 400 "
#define DISTILL STUDENT "--teacher $T/teacher.bin "

/* Every kind of divergence becomes smaller, and the loss is its mean. */
static void student_approaches_teacher(void **state) {
    (void)state;
    static const char *const kinds[] = {"forward_kl", "reverse_kl", "jsd", "tvd", "skew_forward", "skew_reverse"};
    for (int i = 0; i < TOKEN_DIVERGENCE_KINDS; i++) {
        sh(DISTILL "-x 40 --divergence %s -o $T/s.bin --metrics $T/m.jsonl", kinds[i]);
        const double first = metric("m.jsonl", 0, "distill/divergence"),
                     last = metric_mean("m.jsonl", 35, 40, "distill/divergence");
        assert_true(first > 0 && last > 0 && last < 0.6 * first);
        for (int k = 0; k < 40; k += 13)
            assert_near(metric("m.jsonl", k, "loss"), metric("m.jsonl", k, "distill/divergence"), 1e-5);
        assert_true(metric("m.jsonl", 39, "distill/reverse_kl") < metric("m.jsonl", 0, "distill/reverse_kl"));
        assert_true(metric("m.jsonl", 39, "distill/forward_kl") < metric("m.jsonl", 0, "distill/forward_kl"));
    }
}

/* The loss is w D + (1 - w) NLL, also with dynamic fine-tuning's loss, whose gradient needs the forward pass. */
static void losses_are_mixed(void **state) {
    (void)state;
    sh(DISTILL "-x 3 --distill-weight 0.25 -o $T/s.bin --metrics $T/m.jsonl");
    for (int k = 0; k < 3; k++)
        assert_near(metric("m.jsonl", k, "loss"),
                    0.25 * metric("m.jsonl", k, "distill/divergence") + 0.75 * metric("m.jsonl", k, "distill/nll"),
                    1e-5);
    sh(STUDENT "-x 10 -o $T/plain.bin");
    sh(DISTILL "-x 10 --distill-weight 1e-9 -o $T/s.bin");
    assert_true(weights_gap("plain.bin", "s.bin") < 1e-4); /* Adam's first steps magnify rounding */
    sh(STUDENT "-x 10 -o $T/plain.bin --loss-type dft");
    sh(DISTILL "-x 10 --distill-weight 1e-9 -o $T/s.bin --loss-type dft");
    assert_true(weights_gap("plain.bin", "s.bin") < 1e-4);
}

/* Micro-batches change rounding only; a resumed run is the same to the last byte. */
static void runs_resume(void **state) {
    (void)state;
    sh(DISTILL "-x 6 -o $T/whole.bin --state $T/run.state --save-steps 4 --divergence jsd --distill-temperature 2");
    sh(DISTILL "-x 6 -o $T/small.bin --micro-tokens 48 --divergence jsd --distill-temperature 2");
    assert_true(weights_gap("whole.bin", "small.bin") < 1e-4);
    sh(DISTILL "-x 6 -o $T/parts.bin --resume $T/run.state --divergence jsd --distill-temperature 2");
    assert_same_file("whole.bin", "parts.bin");
    refused(1,
            DISTILL
            "-x 6 -o $T/kept --resume $T/run.state --divergence jsd --distill-temperature 2 --teacher $T/base.bin",
            "it is not the file of --teacher that the run began with");
    refused(1, DISTILL "-x 6 -o $T/kept --resume $T/run.state --divergence jsd", "--distill-temperature 2 (here 1)");
}

/* GKD's mix: with share 0 the run is that without it, with share 1 every step is the student's own, and between them the
 * share is that of a coin of the seed and the step. Resumed runs draw the same answers. */
static void answers_are_mixed(void **state) {
    (void)state;
    sh(DISTILL "-x 4 -o $T/plain.bin");
    sh(DISTILL "-x 4 --on-policy-share 0 -o $T/s.bin");
    assert_true(weights_gap("plain.bin", "s.bin") == 0);
#define MIX DISTILL "--divergence jsd --max-new-tokens 8 "
    sh(MIX "-x 40 --on-policy-share 1 -o $T/s.bin --metrics $T/m.jsonl");
    assert_true(metric("m.jsonl", 39, "distill/on_policy_share") == 1);
    assert_true(metric_mean("m.jsonl", 35, 40, "distill/divergence") <
                0.7 * metric("m.jsonl", 0, "distill/divergence"));
    /* the tokens are the student's own: their negative log-likelihood is close to its entropy, and far above it on data */
    const double first = metric("m.jsonl", 0, "distill/nll");
    assert_near(first, metric("m.jsonl", 0, "entropy"), 0.15 * first);
    sh(MIX "-x 40 --on-policy-share 0.5 -o $T/s.bin --metrics $T/m.jsonl");
    const double share = metric("m.jsonl", 39, "distill/on_policy_share");
    assert_true(share > 0.25 && share < 0.75); /* 3 standard deviations of 40 draws */
    sh(MIX "-x 40 --seq-kd -o $T/s.bin --metrics $T/m.jsonl");
    const double teacher = -metric_mean("m.jsonl", 0, 40, "teacher/logp");
    assert_near(teacher, metric_mean("m.jsonl", 0, 40, "teacher/entropy"),
                0.1 * teacher); /* the teacher's own tokens */
    sh(MIX "-x 8 --on-policy-share 0.5 --seq-kd -o $T/whole.bin --state $T/run.state --save-steps 5");
    sh(MIX "-x 8 --on-policy-share 0.5 --seq-kd -o $T/parts.bin --resume $T/run.state");
    assert_same_file("whole.bin", "parts.bin");
    refused(2, STUDENT "-o $T/kept --on-policy-share 0.5", "used only with --teacher");
    refused(2, DISTILL "-o $T/kept --max-new-tokens 5", "used only with --on-policy-share and --seq-kd");
    refused(2, DISTILL "-o $T/kept --on-policy-share 1 --seq-kd", "leaves no steps to the teacher");
}

/* ---- the teacher's log-probabilities in a file ---------------------------------------------------------------------- */

/* Rows of a table against sums in long double over sorted tokens: equal tokens in the order of their ids, a rest that a
 * subtraction from 1 would lose, the whole vocabulary. */
static void rows_of_a_table(void **state) {
    (void)state;
    enum { V = 300 };
    Random r = random_start(11, 0);
    static const struct {
        int K;
        double scale, temperature;
    } cases[] = {{1, 1, 1}, {7, 3, 0.5}, {64, 30, 2}, {299, 1, 1}, {300, 4, 1}, {10, 900, 1}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const int K = cases[c].K;
        float z[V], logp[V];
        int32_t token[V];
        for (int v = 0; v < V; v++) z[v] = (float)(cases[c].scale * random_normal(&r));
        z[40] = z[41] = z[250] = z[12]; /* four equal ones */
        long double sum = 0, rest = 0, entropy = 0;
        float max = z[0];
        for (int v = 1; v < V; v++) max = fmaxf(max, z[v]);
        for (int v = 0; v < V; v++) sum += expl(((long double)z[v] - max) / cases[c].temperature);
        for (int v = 0; v < V; v++) {
            int place = 0;
            for (int u = 0; u < V; u++) place += z[u] > z[v] || (z[u] == z[v] && u < v);
            const long double y = ((long double)z[v] - max) / cases[c].temperature, p = expl(y) / sum;
            rest += place >= K ? p : 0;
            entropy -= p > 0 ? p * (y - logl(sum)) : 0;
        }
        const TeacherRow row = teacher_row_of(z, V, K, (float)cases[c].temperature, 250, logp, token);
        for (int v = 0; v < V; v++) {
            int place = 0;
            for (int u = 0; u < V; u++) place += z[u] > z[v] || (z[u] == z[v] && u < v);
            if (place >= K) continue;
            const double want = (double)(((long double)z[v] - max) / cases[c].temperature - logl(sum));
            assert_int_equal(token[place], v);
            assert_near(logp[place], want, 1e-7 * (1 + fabs(want)));
        }
        if (K == V) assert_true(row.rest == -INFINITY);
        else assert_near(row.rest, (double)logl(rest), 1e-6 + 1e-7 * fabs((double)logl(rest)));
        assert_near(row.entropy, (double)entropy, 1e-6);
        const double target = (double)(((long double)z[250] - max) / cases[c].temperature - logl(sum));
        assert_near(row.logp, target, 1e-7 * (1 + fabs(target)));
    }
}

#define TABLE "--teacher-log-probs $T/teacher.table "

/* A table of the whole vocabulary gives what the teacher gives, up to rounding; one of fewer tokens a lower bound. A file that
 * exists is read, with or without the teacher, and the run is the same to the last bit. */
static void a_table_stands_for_the_teacher(void **state) {
    (void)state;
    static const char *const same[] = {"loss",         "distill/divergence", "distill/forward_kl", "distill/reverse_kl",
                                       "teacher/logp", "teacher/entropy",    "distill/agreement",  "distill/nll"};
    static const char *const kinds[] = {"forward_kl", "jsd --distill-temperature 2 --distill-weight 0.7"};
    for (int k = 0; k < 2; k++) {
        sh("rm -f $T/teacher.table");
        sh(DISTILL "-x 6 --divergence %s -o $T/live.bin --metrics $T/live.jsonl", kinds[k]);
        sh(DISTILL TABLE "--teacher-top-k 260 -x 6 --divergence %s -o $T/made.bin --metrics $T/m.jsonl", kinds[k]);
        assert_holds(said, "the 260 likeliest of 260 tokens");
        assert_null(strstr(said, "lower bound"));
        for (int i = 0; i < 6; i++)
            for (size_t n = 0; n < sizeof same / sizeof *same; n++)
                assert_near(metric("m.jsonl", i, same[n]), metric("live.jsonl", i, same[n]), 2e-5);
        assert_near(metric("m.jsonl", 3, "teacher/listed_mass"), 1, 1e-6);
        assert_true(weights_gap("live.bin", "made.bin") < 1e-4);
    }
    sh(DISTILL "-x 4 --divergence jsd -o $T/live.bin --metrics $T/live.jsonl");
    static const char *const lists[] = {"3", "20"};
    double before[4] = {0}; /* the figures of the first step, of equal weights: longer lists are finer */
    for (int k = 1; k >= 0; k--) {
        sh("rm -f $T/teacher.table");
        sh(DISTILL TABLE
           "--teacher-top-k %s -x 4 --divergence jsd -o $T/made.bin --metrics $T/m.jsonl -j $T/chat.shard",
           lists[k]);
        assert_holds(said, "a lower bound");
        for (int i = 1; i < 4; i++) {
            const double here = metric("m.jsonl", 0, same[i]), finer = k ? metric("live.jsonl", 0, same[i]) : before[i];
            assert_true(here > 0 && here < finer);
            before[i] = here;
        }
    }
    for (int i = 4; i < 6; i++) assert_near(metric("m.jsonl", 0, same[i]), metric("live.jsonl", 0, same[i]), 2e-5);
    assert_true(metric("m.jsonl", 0, "teacher/listed_mass") > 0.5 && metric("m.jsonl", 0, "teacher/listed_mass") < 1);
    sh(STUDENT TABLE "-x 4 --divergence jsd -o $T/used.bin -j $T/chat.shard");
    assert_null(strstr(said, "log-probabilities computed"));
    size_t n;
    float *made = weights_of("made.bin", &n), *used = weights_of("used.bin", &n);
    assert_memory_equal(made, used, n * sizeof *made);
    free(made), free(used);
    sh(DISTILL TABLE "-x 1 --divergence forward_kl --micro-tokens 48 -o $T/used.bin"); /* another divergence */
    sh("./data/show $T/used.bin >$T/shown");
    char *shown = text_of(files_path("shown"));
    assert_holds(shown, "top_k");
    free(shown);
    sh("./data/show --records 1 $T/teacher.table >$T/shown");
    shown = text_of(files_path("shown"));
    assert_holds(shown, "tokens of a list: 3, vocabulary: 260");
    assert_holds(shown, "table 1: ");
    free(shown);
    sh("./data/show --records 2 --json $T/teacher.table >$T/shown");
    assert_int_equal(metric_lines("shown"), 4); /* of two tables */
    assert_true(metric("shown", 0, "rest") > 0 && metric("shown", 0, "rest") < 0.5);
}

/* Resumed runs end in the same bytes; another file, data, settings and tokens are refused. */
static void tables_belong_to_runs(void **state) {
    (void)state;
    sh("rm -f $T/teacher.table");
    sh(DISTILL TABLE "--teacher-top-k 8 -x 6 -o $T/whole.bin --state $T/run.state --save-steps 4");
    sh(DISTILL TABLE "--teacher-top-k 8 -x 6 -o $T/parts.bin --resume $T/run.state");
    assert_same_file("whole.bin", "parts.bin");
    refused(1, DISTILL TABLE "-x 6 -o $T/kept --resume $T/run.state", "--teacher-top-k 8 (here 64)");
    refused(1, DISTILL "-x 6 -o $T/kept --resume $T/run.state", "--teacher-log-probs");
    sh(DISTILL "--teacher-log-probs $T/other.table --teacher-top-k 8 -j $T/chat.shard -x 1 -o $T/s.bin");
    refused(1, DISTILL "--teacher-log-probs $T/other.table --teacher-top-k 8 -x 6 -o $T/kept --resume $T/run.state",
            "it is not the file of --teacher-log-probs that the run began with");
    run(1, STUDENT TABLE "-x 1 -o $T/kept --max-length 7"); /* after a warning */
    assert_holds(said, "it was computed for other records than those of");
    refused(1, STUDENT TABLE "-x 1 -o $T/kept --no-completion-only-loss", "it was computed for other records");
    refused(1, STUDENT TABLE "-x 1 -o $T/kept -j $T/chat.shard --teacher-top-k 9", "--teacher-top-k 8, not 9");
    refused(1, STUDENT TABLE "-x 1 -o $T/kept --distill-temperature 2", "--distill-temperature 1, not 2");
    refused(1, STUDENT TABLE "-x 1 -o $T/kept --teacher $T/live.bin", "it was computed with another teacher");
    refused(1, STUDENT "--teacher-log-probs $T/none.table -x 1 -o $T/kept", "--teacher computes it");
    refused(1, STUDENT "--teacher-log-probs $T/chat.shard -x 1 -o $T/kept", "expected a teacher's table");
    refused(2, STUDENT TABLE "-x 1 -o $T/kept --divergence reverse_kl", "for --divergence forward_kl and jsd");
    refused(2, STUDENT TABLE "-x 1 -o $T/kept --on-policy-share 0.5", "--on-policy-share and --seq-kd draw others");
    refused(2, STUDENT "-x 1 -o $T/kept --teacher-top-k 8", "used only with --teacher-log-probs");
    refused(2, DISTILL "--teacher-log-probs $T/new.table --teacher-top-k 261 -x 1 -o $T/kept",
            "the vocabulary has 260 tokens");
    put("other.jsonl", "{\"prompt\":\"abab\",\"completion\":\"cdcd\"}\n{\"prompt\":\"ab\",\"completion\":\"cd\"}\n");
    sh("./data/make_shard --quiet -i $T/other.jsonl --tokenizer tests/golden/tokenizer_small.json -o $T/other.shard");
    refused(1, "./train_sft --layers 1 --width 32 --heads 2 --context 48 -i $T/other.shard -o $T/kept -x 1 " TABLE,
            "the teacher's tokens must be the student's");
}

static bool opens_table(const char *path, Error *e) {
    TeacherTable t;
    return teacher_table_open(&t, path, e);
}

/* A file that is cut or changed at any place is refused with one line, and an impossible size takes no memory. */
static void damaged_tables(void **state) {
    (void)state;
    Error e;
    TeacherTable t;
    size_t n;
    uint8_t *data = files_get(files_path("teacher.table"), &n), *broken = (uint8_t *)xmalloc(n + 4);
    assert_true(teacher_table_open(&t, files_path("teacher.table"), &e));
    const size_t row = 128 + t.tokenizer_bytes + 16;
    assert_int_equal(n, row + t.table[0].targets * teacher_row_bytes(t.vocab, t.count) + 8);
    teacher_table_close(&t);
    files_refuse_damage(data, n, 300, 100, opens_table);
    /* with a checksum that is right again: the first row */
    static const struct {
        size_t at;
        uint32_t value;
        const char *part;
    } bad[] = {{0, 0x7fc00000, "no log-probability of its target"},
               {0, 0x3f800000, "no log-probability of its target"},
               {4, 0xc0000000, "an impossible entropy"},
               {4, 0x41200000, "an impossible entropy"},
               {8, 0x7fc00000, "a rest that is not a log-probability"},
               {8, 0xff800000, "a rest that is not a log-probability"},
               {8, 0xbe000000, "probabilities that do not add up to 1"},
               {12, 0x3f800000, "log-probabilities that do not fall"},
               {16, 0x7fc00000, "log-probabilities that do not fall"},
               {12 + 32, 0xffffffff, "a token that is not in the vocabulary or is listed twice"},
               {12 + 32, 0x00070007, "a token that is not in the vocabulary or is listed twice"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memcpy(broken, data, n);
        memcpy(broken + row + bad[i].at, &bad[i].value, 4);
        const uint64_t hash = XXH3_64bits(broken, n - 8);
        memcpy(broken + n - 8, &hash, 8);
        files_put(files_path("broken"), broken, n);
        assert_false(teacher_table_open(&t, files_path("broken"), &e));
        assert_holds(e.text, bad[i].part);
    }
    memcpy(broken, data, n);
    memset(broken + row - 8, 0x7f, 7);
    files_put(files_path("broken"), broken, n);
    assert_false(teacher_table_open(&t, files_path("broken"), &e));
    refused(1, STUDENT "--teacher-log-probs $T/broken -x 1 -o $T/kept", "broken");
    sh("zstd -q -f $T/teacher.table -o $T/packed.zst"); /* not mapped */
    sh(STUDENT "--teacher-log-probs $T/packed.zst -x 6 -o $T/parts.bin");
    assert_true(weights_gap("whole.bin", "parts.bin") == 0);
    free(data), free(broken);
}

/* Adapters are trained against a teacher as all weights are. */
static void adapters(void **state) {
    (void)state;
    sh("./train_sft --layers 2 --width 64 --heads 2 --context 48 -i $T/chat.shard -o $T/young.bin -x 25 -l 3e-3 "
       "--batch-tokens 400");
    sh("./train_sft -c $T/young.bin -i $T/chat.shard --batch-tokens 400 --teacher $T/teacher.bin -x 60 --lora-rank 4 "
       "-l 1e-2 -o $T/s.bin --metrics $T/m.jsonl");
    assert_true(metric_mean("m.jsonl", 55, 60, "distill/divergence") <
                0.97 * metric_mean("m.jsonl", 0, 5, "distill/divergence"));
}

/* ---- train_grpo ------------------------------------------------------------------------------------------------ */

#define ON_POLICY "./train_grpo -c $T/base.bin -i $T/tasks.shard --teacher $T/teacher.bin -p 8 -G 4 -g 8 "

/* The advantages of tokens against the sums of their definition. */
static void advantages_of_tokens(void **state) {
    (void)state;
    enum { N = 9 };
    Random r = random_start(8, 0);
    float value[N], teacher[N], sampler[N], advantage[N];
    for (int i = 0; i < N; i++) {
        value[i] = (float)random_real(&r);
        teacher[i] = (float)-random_real(&r);
        sampler[i] = (float)-random_real(&r);
    }
    const GenerationSlice x = {.sampler_logp = sampler};
    Distiller d = {
        .coef = 0.7, .gamma = 0.6, .advantage = advantage, .teacher = {.out = {.value = value, .logp = teacher}}};
    for (int kind = 0; kind < 3; kind++) {
        d.penalty = kind == 2;
        d.estimator = kind ? DISTILL_MINILLM : DISTILL_SAMPLED;
        distiller_advantages(&d, &x, 2, N);
        for (int t = 2; t < N; t++) {
            double sum = 0, weights = 0;
            for (int later = t + 1; later < N; later++) {
                const double w = pow(0.6, later - t - 1);
                sum += d.penalty ? value[later] : w * ((double)sampler[later] - teacher[later]);
                weights += w;
            }
            const double want = kind == 0     ? (double)sampler[t] - teacher[t]
                                : kind == 2   ? sum
                                : weights > 0 ? sum / weights
                                              : 0;
            assert_near(advantage[t], -0.7 * want, 1e-6);
        }
    }
}

/* A constant added to the advantage of every token is that added to those of the completions, bit for bit. */
static void token_advantages_add(void **state) {
    (void)state;
    const float old[] = {-1, -2, -0.5f, -3, -1, -1}, logp[] = {-1.1f, -1.5f, -0.6f, -3, -0.7f, -1.4f};
    const float each[] = {0.5f, -0.25f}, sums[] = {0.75f, 0}, quarter[] = {0.25f, 0.25f, 0.25f, 0.25f, 0.25f, 0.25f};
    const int32_t offset[] = {0, 4, 6};
    static const PolicyLossKind kinds[] = {POLICY_GRPO,  POLICY_DAPO, POLICY_GSPO,
                                           POLICY_CISPO, POLICY_SAPO, POLICY_RLOO};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        const PolicyLossConfig c = policy_loss_config(kinds[k]);
        const PolicyNormaliser n = policy_normaliser(offset, 2, NULL, NULL);
        float a[6], b[6];
        PolicyStats stats = policy_stats();
        PolicyBatch batch = {.completions = 2, .offset = offset, .advantage = sums, .logp = logp, .old_logp = old};
        const double want = policy_loss(&c, &n, &batch, a, NULL, &stats);
        batch.advantage = each;
        batch.token_advantage = quarter;
        assert_true(policy_loss(&c, &n, &batch, b, NULL, &stats) == want);
        assert_memory_equal(a, b, sizeof a);
    }
}

/* Each estimator makes the exact divergence on the student's samples smaller. The losses are what their definitions say:
 * the divergence, or with one step for each generation the mean of the sampled estimate. */
static void on_policy_distillation(void **state) {
    (void)state;
    static const char *const kinds[] = {"exact", "sampled", "minillm"};
    for (int k = 0; k < 3; k++) {
        sh(ON_POLICY "-x 40 -l 3e-3 --reward none --distill-estimator %s -o $T/s.bin --metrics $T/m.jsonl", kinds[k]);
        assert_true(metric_mean("m.jsonl", 35, 40, "distill/reverse_kl") <
                    0.6 * metric("m.jsonl", 0, "distill/reverse_kl"));
        assert_false(has_metric("m.jsonl", 0, "reward"));
        for (int i = 0; i < 3; i++) {
            const double loss = metric("m.jsonl", i, "loss");
            if (k == 0) assert_near(loss, metric("m.jsonl", i, "distill/divergence"), 1e-5);
            if (k == 1) assert_near(loss, metric("m.jsonl", i, "teacher_kl"), 1e-4);
        }
    }
    sh(ON_POLICY "-x 4 -l 3e-3 --divergence jsd --distill-coef 0.5 -o $T/s.bin --metrics $T/m.jsonl");
    assert_true(has_metric("m.jsonl", 0, "reward"));
}

/* The exact KL of the first step is 0; later ones agree with the sampled estimate k3 of the same run, whose gradient has the
 * same mean. */
static void exact_kl(void **state) {
    (void)state;
#define PENALTY "./train_grpo -c $T/base.bin -i $T/tasks.shard -p 16 -G 8 -g 8 -x 20 -l 2e-3 --beta 0.1 -o $T/s.bin "
    sh(PENALTY "--kl-estimator exact --metrics $T/m.jsonl");
    assert_near(metric("m.jsonl", 0, "kl"), 0, 1e-6);
    const double exact = metric_mean("m.jsonl", 10, 20, "kl");
    sh(PENALTY "--metrics $T/m.jsonl");
    const double k3 = metric_mean("m.jsonl", 10, 20, "kl");
    assert_true(exact > 0 && k3 > 0 && exact < 3 * k3 && k3 < 3 * exact);
    sh(PENALTY "--kl-estimator exact --kl-in reward --metrics $T/m.jsonl");
    assert_true(metric("m.jsonl", 19, "objective/kl") > 0);
}

/* The teacher is the model itself, after another prompt: a text, or messages. If the other prompt is the same one, there is
 * nothing to learn, and the run ends. */
static void self_distillation(void **state) {
    (void)state;
    put("hint.jsonl", "{\"prompt\":\"ab\",\"hint\":\"aaaa ab\",\"same\":\"ab\"}\n"
                      "{\"prompt\":\"cd\",\"hint\":[{\"role\":\"user\",\"content\":\"bbb cd\"}],\"same\":\"cd\"}\n"
                      "{\"prompt\":\"ba\",\"hint\":\"dd ba\",\"same\":\"ba\"}\n");
    sh("./data/make_shard --quiet -i $T/hint.jsonl -o $T/hint.shard");
#define SELF "./train_grpo -c $T/teacher.bin -i $T/hint.shard --teacher self --reward none -p 3 -G 8 -g 8 "
    sh(SELF "--teacher-prompt hint -x 30 -l 3e-3 -o $T/s.bin --metrics $T/m.jsonl");
    assert_true(metric("m.jsonl", 0, "distill/divergence") > 1e-3);
    assert_true(metric_mean("m.jsonl", 25, 30, "distill/divergence") <
                0.7 * metric("m.jsonl", 0, "distill/divergence"));
    run(1, SELF "--teacher-prompt same -x 2 -o $T/s.bin");
    assert_holds(said, "distillation has no effect");
    sh(SELF "--teacher-prompt hint -x 6 -o $T/whole.bin --state $T/run.state --save-steps 4");
    sh(SELF "--teacher-prompt hint -x 6 -o $T/small.bin --micro-tokens 48");
    assert_true(weights_gap("whole.bin", "small.bin") < 1e-4);
    sh(SELF "--teacher-prompt hint -x 6 -o $T/parts.bin --resume $T/run.state");
    assert_same_file("whole.bin", "parts.bin");
    refused(1, SELF "-o $T/kept --teacher-prompt none", "the row has no such field");
    refused(2, SELF "-o $T/kept", "give --teacher-prompt");
    refused(2, STUDENT "-o $T/kept --teacher self", "only train_grpo has");
}

/* Checks that the weights of `after` are a pi + (1 - a) before. Each of the three products and sums is rounded to 24 bits. */
static void assert_average(const char *after, double a, const char *pi, const char *before) {
    size_t n[3];
    float *x = weights_of(after, &n[0]), *y = weights_of(pi, &n[1]), *z = weights_of(before, &n[2]);
    assert_true(n[0] == n[1] && n[1] == n[2]);
    for (size_t i = 0; i < n[0]; i++) {
        const double size = fabs((double)y[i]) + fabs((double)z[i]);
        assert_near(x[i], a * y[i] + (1 - a) * z[i], 3 * 0x1p-24 * size);
    }
    free(x), free(y), free(z);
}

/* With --teacher-ema X the teacher's weights are an average of the policy's, which a training state keeps. */
static void average_teacher(void **state) {
    (void)state;
#define AVERAGE SELF "--teacher-prompt hint -l 3e-3 --lr-scheduler-type constant --teacher-ema 0.25 "
    put("hint.jsonl", "{\"prompt\":\"ab\",\"hint\":\"aaaa ab\"}\n{\"prompt\":\"ba\",\"hint\":\"dd ba\"}\n"
                      "{\"prompt\":\"cd\",\"hint\":\"bbb cd\"}\n");
    sh("./data/make_shard --quiet -i $T/hint.jsonl -o $T/hint.shard");
    sh(AVERAGE "-x 1 -o $T/p1.bin --state $T/a.state --save-steps 1 && cp $T/a.state.teacher-1 $T/t1.bin");
    assert_average("t1.bin", 0.25, "p1.bin", "teacher.bin");
    sh(AVERAGE "-x 2 -o $T/p2.bin --state $T/a.state --save-steps 1 --resume $T/a.state && "
               "cp $T/a.state.teacher-2 $T/t2.bin");
    assert_average("t2.bin", 0.25, "p2.bin", "t1.bin");
    assert_true(weights_gap("t2.bin", "p2.bin") > 1e-4);

    sh(AVERAGE "-x 6 -o $T/whole.bin --state $T/run.state --save-steps 4");
    sh(AVERAGE "-x 6 -o $T/parts.bin --resume $T/run.state");
    assert_same_file("whole.bin", "parts.bin");
    sh(SELF "--teacher-prompt hint -l 3e-3 --lr-scheduler-type constant -x 6 -o $T/current.bin");
    assert_true(weights_gap("whole.bin", "current.bin") > 1e-4);
    refused(2, AVERAGE "-o $T/kept --lora-rank 2", "--teacher-ema: cannot be combined with --lora-rank");
    refused(2, AVERAGE "-o $T/kept --beta 0.1 --sync-ref-model", "cannot be combined with --sync-ref-model");
    refused(2, AVERAGE "-o $T/kept --dtype bf16", "give --dtype float32");
    refused(2, "./train_grpo -c $T/base.bin -i $T/hint.shard -o $T/kept --teacher $T/teacher.bin --teacher-ema 0.5",
            "--teacher-ema: used only with --teacher self");
}

static void on_policy_runs_resume(void **state) {
    (void)state;
    static const char *const runs[] = {"--reward none", "--distill-estimator sampled",
                                       "--distill-estimator minillm --reward none",
                                       "--num-iterations 2 --steps-per-generation 2"};
    for (size_t k = 0; k < sizeof runs / sizeof *runs; k++) {
        sh(ON_POLICY "%s -x 8 -o $T/whole.bin --state $T/run.state --save-steps 5", runs[k]);
        sh(ON_POLICY "%s -x 8 -o $T/parts.bin --resume $T/run.state", runs[k]);
        assert_same_file("whole.bin", "parts.bin");
    }
    sh(PENALTY "--kl-estimator exact --state $T/run.state --save-steps 11");
    sh("cp $T/s.bin $T/whole.bin");
    sh(PENALTY "--kl-estimator exact --resume $T/run.state");
    assert_same_file("whole.bin", "s.bin");
}

/* ---- evaluate -------------------------------------------------------------------------------------------------- */

static Model loaded(const char *name) {
    Error e;
    Model m;
    ModelFile f;
    if (!model_load(&m, &f, files_path(name), NULL, false, backend_cpu(), models_device, false, 0, NULL, &e))
        fail_msg("%s", e.text);
    model_file_free(&f);
    return m;
}

/* The texts in a page of tokens; the caller owns them. */
static json_t *page_texts(const char *page) {
    json_error_t why;
    const char *data = strstr(page, "id='tokens-data'>");
    assert_non_null(data);
    json_t *texts = json_loads(data + strlen("id='tokens-data'>"), JSON_DISABLE_EOF_CHECK, &why);
    if (!texts) fail_msg("the data of the page: %s", why.text);
    return texts;
}

/* Checks that a page has the tokens of a file of --tokens in their order, with four digits of their values. */
static void page_has_rows(const char *page_name, const char *rows) {
    static const char *const keys[][2] = {
        {"exact", "kl"}, {"logp", "logp"}, {"ref_logp", "reference_logp"}, {"entropy", "entropy"}, {"rank", "rank"}};
    char *page = text_of(files_path(page_name)), *lines = text_of(files_path(rows));
    json_t *texts = page_texts(page);
    int line = 0;
    assert_page(page, strlen(page));
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i), *tokens = json_object_get(text, "tokens");
        assert_true(json_string_length(json_object_get(text, "before")) > 0);
        for (size_t k = 0; k < json_array_size(tokens); k++) {
            json_t *row = json_line_of(lines, line++);
            assert_int_equal(json_integer_value(json_object_get(text, "index")),
                             json_integer_value(json_object_get(row, "index")));
            assert_string_equal(json_string_value(json_array_get(tokens, k)),
                                json_string_value(json_object_get(row, "text")));
            for (size_t v = 0; v < sizeof keys / sizeof *keys; v++) {
                const double want = json_number_value(json_object_get(row, keys[v][1]));
                assert_near(json_number_value(json_array_get(json_object_get(text, keys[v][0]), k)), want,
                            5.1e-4 * fabs(want));
            }
            json_decref(row);
        }
    }
    assert_int_equal(line, lines_of(lines));
    json_decref(texts), free(page), free(lines);
}

/* A page of hostile texts; a character of several tokens; the tokens that are left out. */
static void page_of_tokens(void **state) {
    (void)state;
    static const char *const words[] = {"</script><b onclick='x'>", "&\xE2\x80\xAE", "\xE2\x82", "\xAC", "end\xE2"};
    TokenPage p = {0};
    char *page = NULL;
    size_t n;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        token_page_add(&p, &(TokenRow){.text = 7,
                                       .bytes = words[i],
                                       .n = strlen(words[i]),
                                       .kl = i ? 0.25 : NAN,
                                       .top = json_pack("[[s,f]]", "<!--", 0.5),
                                       .before = i ? NULL : json_string("<script>")});
    for (int text = 8; text < 10; text++)
        for (int i = 0; i < 2 * TOKEN_PAGE_TOKENS; i++)
            token_page_add(&p, &(TokenRow){.text = text, .bytes = "a", .n = 1, .kl = 1});
    token_page_figure(&p, "<i>KL", 0.125);
    FILE *f = open_memstream(&page, &n);
    token_page_write(f, "a<b", &p);
    assert_int_equal(fclose(f), 0);
    token_page_free(&p);
    assert_page(page, n);
    assert_null(strstr(page, "<b onclick"));
    assert_null(strstr(page, "<i>"));
    assert_non_null(strstr(page, "<td>0.125000</td>"));
    /* all of a text that was begun, up to twice the limit; what follows is counted */
    char said[200];
    snprintf(said, sizeof said, "The first %d tokens; %d more are not in the page.", 2 * TOKEN_PAGE_TOKENS,
             2 * TOKEN_PAGE_TOKENS + 5);
    assert_non_null(strstr(page, said));
    json_t *texts = page_texts(page), *tokens = json_object_get(json_array_get(texts, 0), "tokens");
    assert_int_equal(json_array_size(texts), 2);
    assert_int_equal(json_array_size(tokens), 5);
    assert_string_equal(json_string_value(json_array_get(tokens, 2)), "");
    assert_string_equal(json_string_value(json_array_get(tokens, 3)), "\u20AC");
    assert_string_equal(json_string_value(json_array_get(tokens, 4)), "end\uFFFD");
    json_decref(texts), free(page);
}

/* The figures of evaluate --reference, and a token's line in the file of --tokens, from the logits in float64. */
static void evaluation_compares_models(void **state) {
    (void)state;
    Error e;
    enum { V = MODELS_VOCAB, ROWS = 64 };
    Shard s;
    Record rec = {0};
    Workspace w[2];
    Model m[2] = {loaded("base.bin"), loaded("teacher.bin")};
    Batch b = batch_new(ROWS, ROWS, ROWS);
    double kl = 0, reverse = 0, js = 0, entropy[2] = {0}, nll[2] = {0}, agreement = 0, targets = 0, unused[V];
    float *z = (float *)xmalloc(ROWS * V * sizeof *z);
    sh("./evaluate -c $T/base.bin -i $T/chat.shard --reference $T/teacher.bin --tokens $T/tokens.jsonl "
       "--report $T/tokens.html >$T/e.json");
    if (!shard_open(&s, files_path("chat.shard"), &e)) fail_msg("%s", e.text);
    for (int k = 0; k < 2; k++) assert_true(workspace_new(&w[k], &m[k], ROWS, ROWS, ROWS, false, 0, &e));
    for (int64_t i = 0; i < s.count; i++) {
        assert_true(shard_record(&s, i, &rec, &e));
        batch_clear(&b);
        batch_sequence(&b, rec.tokens, rec.mask, rec.count);
        double *logp = (double *)xcalloc((size_t)b.targets * V * 4, sizeof *logp);
        int32_t *best = (int32_t *)xcalloc(2 * (size_t)b.targets, sizeof *best);
        for (int k = 0; k < 2; k++) {
            assert_true(model_logits(&m[k], &w[k], &b, z, &e));
            for (int32_t r = 0; r < b.targets; r++) {
                double row[V], *log_p = logp + (size_t)(2 * r + k) * 2 * V, *p = log_p + V;
                for (int v = 0; v < V; v++) row[v] = z[(size_t)r * V + (size_t)v];
                entropy[k] += divergence_softmax(row, V, 1, log_p, p);
                nll[k] -= log_p[b.target_token[r]];
                for (int v = 0; v < V; v++)
                    if (row[v] > row[best[2 * r + k]]) best[2 * r + k] = v;
            }
        }
        for (int32_t r = 0; r < b.targets; r++) {
            const double *own = logp + (size_t)r * 4 * V, *other = own + 2 * V;
            const double here = divergence_formula(TOKEN_REVERSE_KL, own + V, other + V, V, 0, 1, unused);
            kl += here;
            reverse += divergence_formula(TOKEN_FORWARD_KL, own + V, other + V, V, 0, 1, unused);
            js += divergence_formula(TOKEN_JSD, own + V, other + V, V, 0.5, 1, unused);
            agreement += best[2 * r] == best[2 * r + 1];
            if ((int)targets++ % 50) continue;
            const int line = (int)targets - 1;
            const int32_t id = b.target_token[r];
            int rank = 1;
            for (int v = 0; v < V; v++) rank += own[v] > own[id];
            assert_int_equal((int)metric("tokens.jsonl", line, "index"), i);
            assert_int_equal((int)metric("tokens.jsonl", line, "id"), id);
            assert_int_equal((int)metric("tokens.jsonl", line, "rank"), rank);
            assert_near(metric("tokens.jsonl", line, "logp"), own[id], 1e-4);
            assert_near(metric("tokens.jsonl", line, "reference_logp"), other[id], 1e-4);
            assert_near(metric("tokens.jsonl", line, "kl"), here, 1e-4);
        }
        free(logp), free(best);
    }
    char *text = text_of(files_path("e.json"));
    json_t *all = json_loads(text, 0, NULL), *got = json_object_get(all, "reference");
    const struct {
        const char *key;
        double want;
    } figures[] = {{"kl", kl},
                   {"reference_kl", reverse},
                   {"js", js},
                   {"model_entropy", entropy[0]},
                   {"reference_entropy", entropy[1]},
                   {"model_nll", nll[0]},
                   {"reference_nll", nll[1]},
                   {"agreement", agreement}};
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        assert_near(json_number_value(json_object_get(got, figures[i].key)), figures[i].want / targets, 1e-5);
    double tenths = 0;
    for (size_t i = 0; i < 10; i++) {
        const json_t *d = json_array_get(json_object_get(got, "deciles"), i);
        const double n = json_number_value(json_object_get(d, "tokens"));
        tenths += n > 0 ? n * json_number_value(json_object_get(d, "kl")) : 0;
    }
    assert_near(tenths / targets, kl / targets, 1e-5);
    assert_int_equal(metric_lines("tokens.jsonl"), (int)targets);
    page_has_rows("tokens.html", "tokens.jsonl");
    json_decref(all), free(text), free(z);
    for (int k = 0; k < 2; k++) workspace_free(&w[k], &m[k]), model_free(&m[k]);
    batch_free(&b), record_free(&rec), shard_close(&s);
}

/* On samples of the model, k1 and k3 are unbiased: their means are within 3.5 standard errors of the exact value at the same
 * prefixes. k2 is not. At another temperature both distributions are compared at it. */
static void estimates_are_unbiased(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        sh("./evaluate -c $T/base.bin -i $T/tasks.shard --reference $T/teacher.bin --num-samples 40 --max-new-tokens 12 "
           "--temperature %s >$T/e.json",
           k ? "0.7" : "1");
        char *text = text_of(files_path("e.json"));
        json_t *all = json_loads(text, 0, NULL), *got = json_object_get(all, "reference");
        const double kl = json_number_value(json_object_get(got, "kl"));
        assert_true(kl > 0.05);
        for (int i = 1; i <= 3; i += 2) {
            char key[16], error[24];
            snprintf(key, sizeof key, "k%d", i);
            snprintf(error, sizeof error, "k%d_error", i);
            const double gap = json_number_value(json_object_get(got, key)) - kl;
            assert_true(fabs(gap) < 3.5 * json_number_value(json_object_get(got, error)));
        }
        json_decref(all), free(text);
    }
    sh("./evaluate -c $T/base.bin -i $T/tasks.shard --reference $T/teacher.bin --num-samples 2 --max-new-tokens 12 "
       "--top-k 5 >$T/e.json");
    char *text = text_of(files_path("e.json"));
    assert_null(strstr(text, "\"k1\"")); /* not samples of the distribution itself */
    free(text);
}

static void bad_input(void **state) {
    (void)state;
    refused(2, "./evaluate -c $T/base.bin -i $T/chat.shard --tokens $T/kept", "used only with --reference");
    refused(2, "./evaluate -c $T/base.bin -i $T/chat.shard --report $T/kept", "with --compute-curve or --reference");
    refused(
        2,
        "./evaluate -c $T/base.bin -i $T/tasks.shard --reference $T/teacher.bin --compute-curve $T/c.jsonl --report "
        "$T/kept",
        "give only one of them");
    refused(2,
            "./evaluate -c $T/base.bin -i $T/tasks.shard --num-samples 0 --reference $T/teacher.bin --tokens $T/kept",
            "used only for a loss, or for samples of a prompt shard");
    refused(2, "./train_sft -c $T/base.bin -i $T/chat.shard -o $T/kept --divergence jsd", "used only with --teacher");
    refused(2, DISTILL "-o $T/kept --distill-beta 0.5", "used only by --divergence jsd and skew_*");
    refused(2, DISTILL "-o $T/kept --divergence jsd --distill-beta 0", "use --divergence forward_kl");
    refused(2, DISTILL "-o $T/kept --divergence jsd --distill-beta 1", "use --divergence reverse_kl");
    refused(1, STUDENT "-o $T/kept --teacher $T/none.bin", "none.bin");
    sh("./train_rm -c $T/base.bin -i $T/prefs.shard -x 1 -o $T/rm.bin");
    refused(1, STUDENT "-o $T/kept --teacher $T/rm.bin", "it is a reward model, expected a language model");
    sh("./train_sft --layers 1 --width 32 --heads 2 --context 8 --max-length 8 -i $T/chat.shard -o $T/short.bin -x 1");
    refused(1, STUDENT "-o $T/kept -x 1 --teacher $T/short.bin", "the teacher's context of 8 is shorter");
    run(1, "./train_sft -c $T/base.bin -i $T/chat.shard --teacher $T/base.bin -x 2 -o $T/s.bin");
    assert_holds(said, "it is the model itself");
    assert_holds(said, "distillation has no effect");
    refused(2, "./train_grpo -c $T/base.bin -i $T/tasks.shard -o $T/kept --reward none",
            "nothing is learned without --teacher");
    refused(2, ON_POLICY "-o $T/kept --distill-estimator sampled --divergence jsd", "estimate reverse_kl");
    refused(2, ON_POLICY "-o $T/kept --distill-estimator sampled --distill-temperature 2", "the samples are drawn at");
    refused(2, ON_POLICY "-o $T/kept --distill-gamma 0.5", "used only by --distill-estimator minillm");
    refused(2, ON_POLICY "-o $T/kept --beta 0.1 --kl-estimator exact", "cannot be combined with --teacher");
    refused(2, ON_POLICY "-o $T/kept --loss-type vespo --distill-estimator sampled", "one advantage for all tokens");
    /* a teacher with other tokens */
    put("other.jsonl", "{\"prompt\":\"abab\",\"completion\":\"cdcd\"}\n{\"prompt\":\"ab\",\"completion\":\"cd\"}\n");
    sh("./data/make_shard --quiet -i $T/other.jsonl --tokenizer tests/golden/tokenizer_small.json -o $T/other.shard");
    sh("./train_sft --layers 1 --width 32 --heads 2 --context 48 -i $T/other.shard -o $T/other.bin -x 1");
    refused(1, STUDENT "-o $T/kept -x 1 --teacher $T/other.bin", "the teacher's tokens must be the student's");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients),
        cmocka_unit_test(student_approaches_teacher),
        cmocka_unit_test(losses_are_mixed),
        cmocka_unit_test(runs_resume),
        cmocka_unit_test(answers_are_mixed),
        cmocka_unit_test(rows_of_a_table),
        cmocka_unit_test(a_table_stands_for_the_teacher),
        cmocka_unit_test(tables_belong_to_runs),
        cmocka_unit_test(damaged_tables),
        cmocka_unit_test(adapters),
        cmocka_unit_test(advantages_of_tokens),
        cmocka_unit_test(token_advantages_add),
        cmocka_unit_test(on_policy_distillation),
        cmocka_unit_test(exact_kl),
        cmocka_unit_test(self_distillation),
        cmocka_unit_test(average_teacher),
        cmocka_unit_test(on_policy_runs_resume),
        cmocka_unit_test(page_of_tokens),
        cmocka_unit_test(evaluation_compares_models),
        cmocka_unit_test(estimates_are_unbiased),
        cmocka_unit_test(bad_input),
    };
    return cmocka_run_group_tests_name("distill", tests, setup, models_teardown);
}
