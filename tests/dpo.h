/* dpo.h - small shards with a known preference and an initial model, for the tests of ./train_dpo.
 *
 * A prompt is a letter and a colon. An answer is 2 to 5 letters out of four; the more of them are the letter a, the
 * better.
 *
 *   chat.shard, sft.bin               demonstrations, and a model fine-tuned on them; other.bin: trained a little more
 *   prefs.shard, held.shard           training and held-out pairs
 *   labels.shard, heldlabels.shard    training and held-out answers that are labelled good or bad
 */
#ifndef TESTS_DPO_H
#define TESTS_DPO_H

#include "../llmc/base/error.h"       /* Error */
#include "../llmc/cpu/cpu.h"          /* backend_cpu */
#include "../llmc/model/model.h"      /* Model */
#include "../llmc/model/model_file.h" /* model_load */
#include "../llmc/model/model_load.h" /* ModelFile, model_file_free */
#include "files.h"                    /* files_path */
#include "models.h"                   /* MODELS_VOCAB, models_nats, models_device, models_logits, ... */
#include "run.h"                      /* sh */

#define RULE  "data/make_prefs --rule char=a --letters 4 --prompt-length 2 --split all --min-length 2 --max-length 5 "
#define SHARD " 2>/dev/null | data/make_shard --quiet -i - -o "
#define DPO   "./train_dpo -c $T/sft.bin -i $T/prefs.shard -l 1e-3 --per-device-train-batch-size 16 "
#define KTO   "./train_dpo -c $T/sft.bin -i $T/labels.shard -l 1e-3 --per-device-train-batch-size 16 --loss-type kto "

static int dpo_setup(void **state) {
    if (models_setup(state)) return 1;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    sh(RULE "--count 400 --format chat" SHARD "$T/chat.shard");
    sh(RULE "--count 96 --seed 2" SHARD "$T/prefs.shard");
    sh(RULE "--count 40 --seed 3" SHARD "$T/held.shard");
    sh(RULE "--count 96 --seed 2 --format unpaired" SHARD "$T/labels.shard");
    sh(RULE "--count 40 --seed 3 --format unpaired" SHARD "$T/heldlabels.shard");
    sh("./train_sft --layers 1 --width 32 --heads 2 --context 16 -i $T/chat.shard -o $T/sft.bin -x 40 -l 5e-3 "
       "--batch-tokens 512");
    sh("./train_sft -c $T/sft.bin -i $T/chat.shard -o $T/other.bin -x 20 -l 5e-3 --batch-tokens 256");
    return 0;
}

/* ---- reference values, one sequence at a time -------------------------------------------------------------------- */

/* Sums over an answer's tokens of log p and of log sum_v p_v^2, and the sum of log p over the prompt's tokens except
 * the first. */
typedef struct Truth {
    double logp, square, prompt, length, prompt_length;
} Truth;

static inline Model load(const char *name) {
    Error e;
    Model m;
    ModelFile f;
    if (!model_load(&m, &f, files_path(name), NULL, false, backend_cpu(), models_device, false, 0, NULL, &e))
        fail_msg("%s", e.text);
    model_file_free(&f);
    return m;
}

static inline Truth truth_of(const Model *m, const int32_t *prompt, int n, const int32_t *answer, int k) {
    int32_t ids[64];
    Truth t = {.length = k, .prompt_length = n - 1};
    memcpy(ids, prompt, (size_t)n * sizeof *ids);
    memcpy(ids + n, answer, (size_t)k * sizeof *ids);
    float *logits = models_logits(m, ids, n + k);
    for (int i = 1; i < n + k; i++) {
        const float *z = logits + (i - 1) * MODELS_VOCAB;
        const double nats = models_nats(z, 1, ids[i]);
        double squares = 0;
        for (int v = 0; v < MODELS_VOCAB; v++) squares += exp(-2 * models_nats(z, 1, v));
        if (i < n) t.prompt -= nats;
        else {
            t.logp -= nats;
            t.square += log(squares);
        }
    }
    free(logits);
    return t;
}

#endif
