/* examples.h - the names that the examples in the head comments of llmc/ use without declaring them.
 *
 * check_examples.sh includes this file after the headers of an example. A name has one type everywhere; where two examples
 * mean different things by it, the later meaning depends on the headers that are included. An example that needs an
 * address, a size or another type declares the variable itself, which hides the name here.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is done with a value, in a word: use(x), print(token), run(&batch). Any arguments are good. */
void use(), print(), run();
double objective();

/* ---- numbers --------------------------------------------------------------------------------------------------- */

extern int argc, k, layer, longest, max_new, max_tokens, new_max, P, prompt_max, rank, ranks, rows, segments, slots,
    targets;
extern int32_t B, completion_len, model_vocab, pairs, prompt_len, sequences, stop, vocab;
extern int64_t count, i, micros, n, R, record, skipped;
extern long long step, steps;
extern size_t bytes, length;
extern uint64_t hash, epoch, first_id, id, seed, sequence;
extern float max, temperature;
extern double beta, delta, loss, lr, mean_kl, mean_reward, N, now, peak, rate, score_chosen, score_rejected, z;
extern bool skip_bad;

/* ---- arrays ---------------------------------------------------------------------------------------------------- */

extern const char *path, *name, *text, *const *keys;
extern char *chat, **argv, header[1024];
extern void *blob, *data;
extern int32_t completion[], ids[256], *offset, *owner, *position, prompt[], *slot, *stream, *token;
extern int64_t *order;
extern uint8_t *counts, *mask;
extern struct { int32_t *tokens, count; } * item;
extern float *advantage, *dentropy, *dlogp, *dscore, *dvalue, *logp, *margin, *parts, *ref_logp, *reward, *score,
    *totals;
extern float *value, *weight, *weights, *x, *y;
extern double *cost, *values;

/* ---- objects of the headers that are included -------------------------------------------------------------------- */

extern FILE *f;
#ifdef LLMC_TEXT_BPE_H
extern Merge merges[];
extern TokenList list;
extern TextBuffer buffer;
#endif
#ifdef LLMC_TEXT_TOKENIZER_H
extern Tokenizer tokenizer;
#endif
#ifdef LLMC_MODEL_CONFIG_H
extern ModelConfig config;
#endif
#ifdef LLMC_CPU_PRODUCT_H
extern int depth, lda, ldb, ldc, m;
extern float *a, *b, *c;
#endif
#ifdef LLMC_MODEL_BATCH_H
extern Batch batch;
#endif
#ifdef LLMC_MODEL_BACKEND_H
extern const Backend *backend;
extern Device *device;
extern Draw how;
#endif
#ifdef LLMC_MODEL_MODEL_H
extern Model model, policy;
#endif
#ifdef LLMC_MODEL_WORKSPACE_H
extern Workspace work;
extern KVCache kv;
#endif
#ifdef LLMC_MODEL_TRANSFORMER_H
extern ModelOutput out;
#endif
#ifdef LLMC_MODEL_OPTIMIZER_H
extern Optimizer optimizer;
extern OptimizerResult result;
#endif
#ifdef LLMC_MODEL_MODEL_LOAD_H
extern ModelFile file;
#endif
#ifdef LLMC_MODEL_MODEL_TEXT_H
extern ModelText model_text;
#endif
#ifdef LLMC_RECORDS_SHARD_H
extern Shard shard;
#endif
#ifdef LLMC_RECORDS_CURSOR_H
extern json_t *state;
#endif
#ifdef LLMC_RECORDS_PAIRS_H
extern const Pair *pair;
#endif
#ifdef LLMC_RECORDS_COMPLETION_SET_H
extern CompletionSet set;
#endif
#ifdef LLMC_REPORT_HISTORY_H
extern History history;
#endif
#ifdef LLMC_REPORT_CURVES_H
extern CurveList curves;
#endif
#ifdef LLMC_REPORT_CHART_H
extern Chart chart;
#endif
#ifdef LLMC_REWARD_REWARDS_H
extern Rewards rewards;
extern RewardInput inputs[];
#endif
#ifdef LLMC_REWARD_REWARD_MODEL_H
extern RewardModel rm;
#endif
#ifdef LLMC_ROLLOUT_ROLLOUT_H
extern Rollout engine;
extern RolloutRequest requests[];
extern RolloutTurns turns;
extern Sampling sampling;
extern Completion c, completions[];
#else
extern int64_t completions;
#endif
#ifdef LLMC_ROLLOUT_PROMPTS_H
extern Prompts prompts;
#endif
#ifdef LLMC_ROLLOUT_EVALUATION_H
extern Evaluation v;
#endif
#ifdef LLMC_EVALUATE_EVALUATOR_H
extern Evaluator ev;
#endif
#ifdef LLMC_EVALUATE_LOSS_SUMS_H
extern LossSums sums;
#endif
#ifdef LLMC_EVALUATE_LOSS_WORK_H
extern LossWork w;
#endif
#ifdef LLMC_EVALUATE_TASKS_H
extern Tasks t;
extern Outcome outcome[];
#endif
#ifdef LLMC_DIST_DIST_H
extern Dist dist;
#endif
#ifdef LLMC_TRAIN_TRAINER_H
extern Trainer trainer;
extern TrainerOptions trainer_options;
extern const Option *table;
#endif
#ifdef LLMC_BASE_OPTIONS_H
extern const OptionAbout about;
#endif
#ifdef LLMC_TRAIN_GENERATION_H
extern Generation g;
extern GenerationOptions options;
#endif
#ifdef LLMC_ROLLOUT_EVALUATION_H
extern Evaluation before, after;
#endif
#ifdef LLMC_TRAIN_PREFERENCE_OPTIONS_H
extern PreferenceOptions losses;
#endif
#ifdef LLMC_REPORT_METRICS_H
extern Metrics metrics;
#endif
#ifdef LLMC_TRAIN_ONLINE_PAIRS_H
extern struct {
    GenerationOptions g;
    OnlineOptions online;
} o;
#elif defined LLMC_TRAIN_PREFERENCE_REFERENCE_H
extern struct { PreferenceReferenceOptions r; } o;
extern PreferenceData train, held_out;
#endif
#ifdef LLMC_TRAIN_REFERENCE_H
extern Reference reference;
#elif defined LLMC_MODEL_MODEL_H
extern Model reference;
#endif
/* One micro-batch, as an objective takes it. */
#if defined LLMC_LOSS_KTO_H
extern KtoBatch b;
#elif defined LLMC_LOSS_PREFERENCE_H
extern PreferenceBatch b;
#elif defined LLMC_LOSS_POLICY_H
extern PolicyBatch b;
#elif defined LLMC_LOSS_PPO_H
extern PpoBatch b;
#endif
#ifdef LLMC_SERVE_REQUEST_H
extern ServeModel served;
#endif
#ifdef LLMC_SERVE_ENGINE_H
extern ServeEngine server;
extern ServeJob *job;
extern bool stopping(void *context);
#endif
