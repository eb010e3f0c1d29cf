/* test_dpo_state.c - files of ./train_dpo: stored reference log-probabilities, resumed states, bad input.
 *
 * Needs train_sft, train_dpo, data/make_shard and data/make_prefs. */
#include "../llmc/base/error.h"        /* Error, xmalloc */
#include "../llmc/model/model.h"       /* Model, model_free */
#include "../llmc/model/model_load.h"  /* model_weights_hash */
#include "../llmc/records/ref_logps.h" /* ref_logps_read, RefLogps, ref_logps_free */
#include "../llmc/records/shard.h"     /* Record, Shard, record_free, shard_close, ... */
#include "dpo.h"                       /* DPO, KTO, dpo_setup, load, ... */
#include "files.h"                     /* files_path, files_put, files_get, files_refuse_damage */
#include "models.h"                    /* refused, assert_near, models_teardown */
#include "run.h"                       /* sh, assert_same_file, metric, weights_of, ... */
#include "shell.h"                     /* said, assert_holds, run, put, ... */

/* ---- reference log-probabilities in a file --------------------------------------------------------------------- */

static bool opens_logps(const char *path, Error *e) {
    RefLogps l;
    return ref_logps_read(&l, path, e);
}

static void a_file_stands_for_the_reference(void **state) {
    (void)state;
    /* computed by the first run, read by the second, with the same resulting bytes; one file covers training and
     * held-out pairs */
    sh(DPO "-j $T/held.shard -x 12 -o $T/made.bin --ref-log-probs $T/ref.logps --ld-alpha 0.5");
    assert_holds(said, "reference log-probabilities computed");
    sh(DPO "-j $T/held.shard -x 12 -o $T/used.bin --ref-log-probs $T/ref.logps --ld-alpha 0.5");
    assert_null(strstr(said, "reference log-probabilities computed"));
    size_t n;
    float *made = weights_of("made.bin", &n), *used = weights_of("used.bin", &n);
    assert_memory_equal(made, used, n * sizeof *made);
    free(made), free(used);
    /* it stores values per token, so other losses can use it; it also serves a run without the held-out pairs */
    sh(DPO "-x 2 -o $T/used.bin --ref-log-probs $T/ref.logps --loss-type ipo");
    /* the sum over the first chosen answer equals that of a single sequence's forward pass */
    Error e;
    RefLogps l;
    Shard s;
    Record r = {0};
    Model m = load("sft.bin");
    assert_true(ref_logps_read(&l, files_path("ref.logps"), &e));
    assert_int_equal(l.tables, 2);
    assert_true(l.model == model_weights_hash(&m));
    assert_true(shard_open(&s, files_path("prefs.shard"), &e) && shard_record(&s, 0, &r, &e));
    double sum = 0;
    for (int i = 0; i < r.length[0]; i++) sum += l.table[0].logp[i];
    assert_near(sum, truth_of(&m, r.tokens, r.prompt, r.tokens + r.prompt, r.length[0]).logp, 1e-4);
    ref_logps_free(&l), record_free(&r), shard_close(&s), model_free(&m);

    /* for other records or another model it is refused with a message that names it, and it stays unchanged */
    sh("cp $T/ref.logps $T/kept2");
    static const struct {
        const char *command, *part;
    } bad[] = {
        {"./train_dpo -c $T/sft.bin -i $T/held.shard -j $T/prefs.shard --max-length 6 ",
         "it was computed for other records"},
        {"./train_dpo -c $T/other.bin -i $T/prefs.shard ", "it was computed with a different model"},
        {"./train_dpo -c $T/sft.bin -i $T/prefs.shard --reference $T/other.bin ",
         "it was computed with a different model"},
        {"./train_dpo -c $T/sft.bin -i $T/labels.shard --loss-type kto ", "it was computed for other records"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char command[400];
        snprintf(command, sizeof command, "%s -x 1 -o $T/a.bin --ref-log-probs $T/ref.logps", bad[i].command);
        run(1, command);
        assert_holds(said, bad[i].part);
        assert_holds(said, "ref.logps");
        assert_same_file("kept2", "ref.logps");
    }
    /* a damaged file is refused before any training */
    uint8_t *data = files_get(files_path("ref.logps"), &n), *broken = (uint8_t *)xmalloc(n + 4);
    files_refuse_damage(data, n, 100, 50, opens_logps);
    memcpy(broken, data, n);
    memset(broken + n, 0, 4);
    files_put(files_path("broken"), broken, n + 4);
    assert_false(ref_logps_read(&l, files_path("broken"), &e));
    /* an impossible count allocates no memory */
    memcpy(broken, data, n);
    memset(broken + 72, 0x7f, 7);
    files_put(files_path("broken"), broken, n);
    assert_false(ref_logps_read(&l, files_path("broken"), &e));
    assert_holds(e.text, "do not fit into the file");
    run(1, DPO "-x 1 -o $T/a.bin --ref-log-probs $T/broken");
    assert_holds(said, "broken");
    free(data), free(broken);
    unlink(files_path("broken")), unlink(files_path("kept2"));
}

static void kto_from_a_file(void **state) {
    (void)state;
    sh(KTO "-x 6 -o $T/live.bin -j $T/heldlabels.shard --metrics $T/live.jsonl");
    sh(KTO "-x 6 -o $T/made.bin -j $T/heldlabels.shard --ref-log-probs $T/kto.logps --metrics $T/made.jsonl");
    for (int i = 0; i < 6; i++) {
        assert_near(metric("made.jsonl", i, "loss"), metric("live.jsonl", i, "loss"), 1e-5);
        assert_near(metric("made.jsonl", i, "kl"), metric("live.jsonl", i, "kl"), 1e-4);
    }
    run(1, KTO "-x 6 -o $T/a.bin --seed 7 --ref-log-probs $T/kto.logps"); /* different mismatched answers */
    assert_holds(said, "or --seed");
    unlink(files_path("live.jsonl")), unlink(files_path("made.jsonl"));
}

/* ---- resumed runs ---------------------------------------------------------------------------------------------- */

/* A run that stops at step 7 of 12 and is resumed, also with --save-steps, ends in the same bytes. */
static void resumes(const char *command) {
    sh("%s -x 12 -o $T/whole.bin", command);
    sh("%s -x 12 -o $T/a.bin --state $T/mid.state --save-steps 7", command);
    assert_same_file("whole.bin", "a.bin");
    sh("%s -x 12 -o $T/parts.bin --resume $T/mid.state", command);
    assert_same_file("whole.bin", "parts.bin");
    sh("rm -f $T/mid.state*");
}

static void resumed_runs_end_in_the_same_bytes(void **state) {
    (void)state;
    resumes(DPO);
    resumes(DPO "-j $T/held.shard --eval-steps 4 --loss-type aot --micro-tokens 32 --weight-decay 0.1");
    resumes(DPO "--precompute-ref-log-probs");
    unlink(files_path("ref.logps"));
    resumes(DPO "--ref-log-probs $T/ref.logps --reference $T/other.bin");
    resumes(DPO "--sync-ref-model --ref-model-sync-steps 3 --ref-model-mixup-alpha 0.4");
    resumes(DPO "--loss-type orpo");
    resumes(KTO);
    resumes(KTO "--ref-log-probs $T/kto2.logps");
}

/* Stopped by a signal at any time; one synced reference file is kept next to the state. */
static void a_signal_stops_it(void **state) {
    (void)state;
    static const char command[] =
        DPO "-x 400 --sync-ref-model --ref-model-sync-steps 5 -j $T/held.shard --eval-steps 50 "
            "--loss-type sigmoid,aot --micro-tokens 64 ";
    sh("%s -o $T/whole.bin", command);
    char text[600];
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof text, "%s -o $T/parts.bin --metrics $T/parts.jsonl %s", command,
                 i ? "--resume $T/parts.bin.state" : "");
        const pid_t pid = run_start(text);
        if (i < 2) {
            run_until(files_path("parts.jsonl"), 40 + 60 * i);
            kill(pid, SIGTERM);
        }
        if (run_wait(pid, 120)) fail_msg("%s", said);
        if (i < 2) assert_holds(said, "stopped by a signal after step");
    }
    assert_same_file("whole.bin", "parts.bin");
    sh("ls $T/parts.bin.state.reference-* | wc -l");
    assert_string_equal(out, "1\n");
    unlink(files_path("parts.jsonl"));
    sh("rm -f $T/parts.bin.state*");
}

/* ---- bad input ------------------------------------------------------------------------------------------------- */

static void bad_command_lines(void **state) {
    (void)state;
    static const struct {
        const char *options, *part;
    } bad[] = {
        {"--loss-type dpo", "--loss-type: 'dpo' is not one of sigmoid|"},
        {"--loss-type ''", "--loss-type: the list is empty"},
        {"--loss-type sigmoid,kto", "cannot be combined with other losses"},
        {"--loss-type sigmoid,sft --loss-weights 1", "--loss-weights: a number from 0 to 1e6 is needed for sft"},
        {"--loss-type sigmoid,sft --loss-weights 1,x", "--loss-weights: a number"},
        {"--loss-type sigmoid --loss-weights 1,2", "more weights than losses"},
        {"--loss-type sigmoid --loss-weights -1", "--loss-weights: a number"},
        {"--loss-type exo_pair", "needs --label-smoothing above 0"},
        {"--loss-type hinge --label-smoothing 0.1", "--label-smoothing: used only with --loss-type sigmoid,"},
        {"--label-smoothing 0.5", "out of range"},
        {"--loss-type nca_pair --f-divergence-type forward_kl", "--f-divergence-type: used only with --loss-type"},
        {"--f-alpha-divergence-coef 0.7", "used only with --f-divergence-type alpha_divergence"},
        {"--loss-type simpo --ld-alpha 0.5", "--ld-alpha: used only with"},
        {"--loss-type aot --use-weighting", "--use-weighting: used only with"},
        {"--loss-type kto --rpo-alpha 1", "--rpo-alpha: used only with"},
        {"--desirable-weight 2", "used only with --loss-type kto|apo_zero_unpaired"},
        {"--simpo-gamma 1", "--simpo-gamma: used only with --loss-type simpo"},
        {"--cpo-alpha 0", "--cpo-alpha: used only with --loss-type cpo"},
        {"--alpha 1", "--alpha: used only with --loss-type simpo or cpo"},
        {"--dpop-lambda 1", "--dpop-lambda: used only with --loss-type dpop"},
        {"--discopop-tau 1", "--discopop-tau: used only with --loss-type discopop"},
        {"--beta 0", "out of range"},
        {"--reference-free --reference $T/sft.bin", "--reference: no reference is used with --reference-free"},
        {"--loss-type orpo --ref-log-probs $T/x", "no reference is used by --loss-type"},
        {"--loss-type simpo --sync-ref-model", "no reference is used by --loss-type"},
        {"--loss-type simpo --reference-free", "--reference-free: no reference is used by --loss-type"},
        {"--loss-type kto --reference-free", "kto needs a reference"},
        {"--sync-ref-model --precompute-ref-log-probs", "cannot be used with --precompute-ref-log-probs"},
        {"--ref-log-probs -", "--ref-log-probs: must be a file"},
        {"--per-device-train-batch-size 0", "out of range"},
        {"word", "unexpected argument"},
    };
    char command[400];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(command, sizeof command, "./train_dpo -c $T/sft.bin -i $T/prefs.shard -o $T/kept %s", bad[i].options);
        refused(2, command, bad[i].part);
    }
    refused(2, "./train_dpo -c $T/sft.bin -o $T/kept", "-i/--input is required");
    refused(2, "./train_dpo -c $T/sft.bin -i $T/prefs.shard", "-o/--output is required");
}

static void bad_data(void **state) {
    (void)state;
    refused(1, "./train_dpo -c $T/sft.bin -i $T/chat.shard -o $T/kept", "contains chat records, expected preference");
    refused(1, "./train_dpo -c $T/sft.bin -i $T/labels.shard -o $T/kept",
            "contains unpaired records, expected preference");
    refused(1, "./train_dpo -c $T/sft.bin -i $T/chat.shard -o $T/kept --loss-type kto",
            "contains chat records, expected unpaired");
    refused(1, "./train_dpo -c $T/sft.bin -i $T/prefs.shard -j $T/chat.shard -o $T/kept", "chat.shard: contains chat");
    refused(1, "./train_dpo -c $T/none -i $T/prefs.shard -o $T/kept", "none");
    refused(1, "./train_dpo -c $T/sft.bin -i $T/none -o $T/kept", "none");
    refused(1, "./train_dpo -c $T/sft.bin -i $T/prefs.shard -o $T/none/x", "none/x");
    refused(1, "./train_dpo -c $T/sft.bin -i $T/prefs.shard -o $T/kept --max-length 2", "no record is left");
    /* truncated answers and equal pairs are reported */
    put("alike.jsonl", "{\"prompt\":\"a:\",\"chosen\":\"bbbbbbb\",\"rejected\":\"bbbbbbbc\"}\n"
                       "{\"prompt\":\"a:\",\"chosen\":\"bb\",\"rejected\":\"c\"}\n"
                       "{\"prompt\":\"a long prompt:\",\"chosen\":\"b\",\"rejected\":\"c\"}\n");
    sh("data/make_shard --quiet -i $T/alike.jsonl -o $T/alike.shard");
    sh("./train_dpo -c $T/sft.bin -i $T/alike.shard -o $T/a.bin -x 1 --max-length 6");
    assert_holds(said, "1 of 3 records are left out");
    assert_holds(said, "2 completions exceed 6 tokens with their prompt and were truncated");
    assert_holds(said, "1 of 2 pairs have two equal completions");
    put("one.jsonl", "{\"prompt\":\"a:\",\"completion\":\"b\",\"label\":true}\n");
    sh("data/make_shard --quiet -i $T/one.jsonl -o $T/one.shard");
    refused(1, "./train_dpo -c $T/sft.bin -i $T/one.shard -o $T/kept --loss-type kto", "");
    assert_holds(said, "one record");
    /* a resumed run must use the same shard and the same reference */
    sh(DPO "-x 4 --reference $T/sft.bin -o $T/a.bin --state $T/mid.state --save-steps 2");
    run(1, DPO "-x 4 -o $T/b.bin --resume $T/mid.state --reference $T/other.bin");
    assert_holds(said, "it is not the reference that the run began with");
    run(1, "./train_dpo -c $T/sft.bin -i $T/held.shard -x 4 -o $T/b.bin --resume $T/mid.state");
    assert_holds(said, "a different shard");
    sh(DPO "-x 4 -o $T/a.bin --state $T/mid.state --save-steps 2 --precompute-ref-log-probs --reference $T/sft.bin");
    run(1, DPO "-x 4 -o $T/b.bin --resume $T/mid.state --precompute-ref-log-probs --reference $T/other.bin");
    assert_holds(said, "it is not the reference that the run began with");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_stands_for_the_reference),
        cmocka_unit_test(kto_from_a_file),
        cmocka_unit_test(resumed_runs_end_in_the_same_bytes),
        cmocka_unit_test(a_signal_stops_it),
        cmocka_unit_test(bad_command_lines),
        cmocka_unit_test(bad_data),
    };
    return cmocka_run_group_tests(tests, dpo_setup, models_teardown);
}
