/* evaluate.c - evaluation of a model: its loss on text, its accuracy on verifiable tasks, its scores as a reward model.
 *
 *     ./evaluate -c sft.bin  -i val.shard                              loss, perplexity, bits per byte, token accuracy
 *     ./evaluate -c gpt2_124M.bin -i tiny_shakespeare_val.bin --tokenizer gpt2/
 *     ./evaluate -c grpo.bin -i tasks.shard --num-samples 16           greedy accuracy, pass@k, majority@k
 *     ./evaluate -c grpo.bin -i tasks.shard --num-samples 16 --reward verify:1,format=hash:0.1    also best@k by these
 *     ./evaluate -c sft.bin -i tasks.shard --num-samples 16 --reward-model rm.bin    best@k, weighted majority
 *     ./evaluate -c sft.bin -i val.shard --reference base.bin          exact KL between two models, token by token
 *     ./evaluate -i tasks.shard --audit-tests                          prompts of the task code with tests that prove nothing
 *     ./evaluate -i held_out.shard --reward-model rm.bin               a reward model's accuracy, margin, calibration
 *     ./evaluate -i pairs.shard --judge judge.bin --completions labelled.jsonl    a judge's accuracy, biases, labels
 *
 * With several files, which are of one kind, `files` lists the figures of each, and those beside it are of all together.
 *
 * A table is printed to standard error, and one JSON object with sorted keys and full precision to standard output;
 * undefined figures are null. The kind of the data is detected from the file:
 *
 *   chat shard    each record separately, on the tokens in the loss mask (--no-completion-only-loss: on all tokens);
 *                 records longer than the context are truncated, and counted
 *   token shard   consecutive windows of the context's length: each token is predicted from the tokens before it in its
 *                 window; every token but the first is predicted once, across document boundaries as in llm.c
 *   prompt shard  completions to each prompt, judged by the verifier of its task (estimators:
 *                 llmc/rollout/evaluation.h)
 *   with --reference, also the exact KL divergences between two models (llmc/rollout/comparison.h): on the tokens of a chat
 *   or token shard, or on the samples of a prompt shard
 *   preference, unpaired, step shard   a reward model, without -c (llmc/reward/evaluation_reward.h has the figures)
 *   preference shard with --judge      a language model as a judge, without -c (llmc/judge/pairs.h has the figures)
 *
 * loss is the mean of -ln p over the predicted tokens; its error is the standard error of this ratio of sums over
 * records or windows; perplexity is exp(loss). bits_per_byte is the bits of all ordinary tokens divided by their bytes
 * of text; it can be compared between tokenizers. accuracy_low and accuracy_high are Wilson's 95 % interval; keys that
 * end in _error are standard errors.
 */
#include "llmc/base/clock.h"               /* clock_seconds */
#include "llmc/base/error.h"               /* die, usage_error, Error, xcalloc, ... */
#include "llmc/base/file_kind.h"           /* FILE_KIND_BYTES, MAGIC_RECORDS, FILE_KIND_TEXT, file_kind_any */
#include "llmc/base/io.h"                  /* Writer, writer_commit, writer_open, writer_abort, ... */
#include "llmc/base/json_text.h"           /* json_utf8, json_dump_short */
#include "llmc/base/options.h"             /* OPTION_TEXT, OPTION_GROUP, OPTION_INT, OPTION_CHOICE, ... */
#include "llmc/base/program.h"             /* program_stopping, program_start */
#include "llmc/base/random.h"              /* RANDOM_EVAL */
#include "llmc/base/terminal.h"            /* terminal_escapes */
#include "llmc/base/text.h"                /* TextBuffer, text_free, text_string, text_clear, ... */
#include "llmc/device.h"                   /* DeviceKind, backend_open, device_dtype, DTYPE_AUTO */
#include "llmc/judge/judge.h"              /* Judge, judge_close, judge_open, judge_use */
#include "llmc/judge/judge_options.h"      /* judge_given, JUDGE_BY_PAIR, JUDGE_OF_PAIRS, JUDGE_OPTIONS, ... */
#include "llmc/judge/judged.h"             /* judge_figures_json, judge_figures_text, judge_open_rewards */
#include "llmc/judge/pairs.h"              /* JudgeEvaluation, judge_length_bias, JudgedPair, PairTexts, ... */
#include "llmc/model/backend.h"            /* Backend, Device, Dtype */
#include "llmc/model/batch.h"              /* Batch */
#include "llmc/model/config.h"             /* ModelConfig */
#include "llmc/model/model.h"              /* model_sync */
#include "llmc/model/model_fits.h"         /* FitSide, fit_model */
#include "llmc/model/pack.h"               /* batch_segment, batch_target, batch_clear, batch_fits, ... */
#include "llmc/model/transformer.h"        /* ModelOutput, model_flops, model_forward */
#include "llmc/model/workspace.h"          /* Workspace, workspace_free, workspace_new */
#include "llmc/records/clusters.h"         /* clusters_find, CLUSTER_TRAINED, CLUSTER_UNKNOWN, ClusterTrained, ... */
#include "llmc/records/inputs.h"           /* Inputs, inputs_close, inputs_open, inputs_whole */
#include "llmc/records/shard.h"            /* Shard, RECORD_PROMPT, RECORD_CHAT, RECORD_PREFERENCE, ... */
#include "llmc/records/shard_fits.h"       /* fit_shard */
#include "llmc/records/tokens.h"           /* TokenShard, token_at, tokens_close, tokens_read */
#include "llmc/report/compute.h"           /* ComputePoint, COMPUTE_PARTS, compute_json, compute_page */
#include "llmc/report/run_facts.h"         /* run_lineage_name */
#include "llmc/reward/calibration.h"       /* calibration_edge, CALIBRATION_BINS, Calibration, CalibrationBin, ... */
#include "llmc/reward/code_judge.h"        /* code_judge_close, CODE_USES, CodeRow, CODE_OPTIONS, ... */
#include "llmc/reward/code_reward.h"       /* CODE_REWARD_ALL, CodeVerdict, code_reward */
#include "llmc/reward/evaluation_reward.h" /* RewardEvaluation, evaluate_rewards */
#include "llmc/reward/reward_model.h"      /* RewardModel, REWARD_MODEL_PRM, reward_model_close, ... */
#include "llmc/reward/rewards.h"           /* Rewards, rewards_close, rewards_models, rewards_open, ... */
#include "llmc/reward/verify_answer.h"     /* RewardInput */
#include "llmc/rollout/ablation.h"         /* Ablation, ABLATION_NEEDED, ablation_add, ablation_close, ... */
#include "llmc/rollout/beam_search.h"      /* SEARCH_BEAM, SEARCH_DVTS, SEARCH_KINDS, SEARCH_REBASE, ... */
#include "llmc/rollout/beam_tasks.h"       /* BeamFigures, beam_evaluate */
#include "llmc/rollout/certainty.h"        /* Certainty, certainty_close, certainty_open */
#include "llmc/rollout/comparison.h"       /* Comparison, ComparisonSums, COMPARISON_DECILES, ... */
#include "llmc/rollout/episodes.h"         /* episodes_on, EPISODE_OPTIONS, EpisodeOptions, Episodes, ... */
#include "llmc/rollout/evaluation.h"       /* Outcome, EvaluationSample, Evaluation, evaluation_weighted, ... */
#include "llmc/rollout/inference.h"        /* DataFile, json_line, data_file_close, data_file_open, ... */
#include "llmc/rollout/prompts.h"          /* Prompts, prompts_length, PromptText, prompts_tokens, ... */
#include "llmc/rollout/prompts_code.h"     /* prompts_run, PromptsCode, prompts_code_free, prompts_read_code, ... */
#include "llmc/rollout/ranking.h"          /* RankFigures, Ranking, rank_rule_name, RANK_SUM, ... */
#include "llmc/rollout/rollout.h"          /* Sampling, Rollout, Completion, RewardScope, ... */
#include "llmc/rollout/thinking.h"         /* thinking_on, THINKING_BUDGETS, THINKING_INFINITE, Thinking, ... */
#include "llmc/rollout/trajectory.h"       /* STOP_COUNT, STOP_COMPLETED, Trajectory, TrajectoryStop, ... */
#include "llmc/rollout/votes.h"            /* VOTES_REWARD, VOTES_CERTAINTY, VOTES_WEIGHTS, VotesWeight */
#include "llmc/sandbox/sandbox.h"          /* sandbox_name */
#include "llmc/text/chat.h"                /* chat_section */
#include "llmc/text/tokenizer.h"           /* tokenizer_token, Tokenizer */
#include "llmc/tools/code_tool.h"          /* CodeToolOptions */

static struct {
    InferenceOptions m;
    SamplingOptions s;
    CodeOptions code;
    JudgeOptions judge;
    OptionList inputs;
    const char *reward, *reward_cmd, *reward_model, *completions, *compute, *report, *reference, *tokens;
    int64_t most, samples, micro_tokens, max_length;
    double reward_timeout;
    int64_t reward_workers;
    bool reward_group;
    int scope; /* a RewardScope */
    int rank;  /* 0: off; else 1 + a RankOf */
    const char *delimiter;
    bool ablation;
    bool completion_only, audit;
    int aggregation, weight;
    EpisodeOptions episodes;
    ThinkingOptions think;
    BeamOptions search;
} o;

static const Option options[] = {
    // clang-format off
    INFERENCE_MODEL_OPTIONS(o.m),
    OPTION_GROUP("Data"),
    OPTION_LIST("input",                'i', &o.inputs,       "FILE",
                "chat, prompt, preference, unpaired, step or token shard, or a pattern; may be repeated, which "
                "gives the figures of each file and of all; - is standard input"),
    OPTION_INT ("max-prompts",          0,   &o.most,         1, 1e12,
                "evaluate only the first N prompts, records or windows of each file (default: all)"),
    OPTION_GROUP("Loss"),
    OPTION_FLAG("completion-only-loss", 0, &o.completion_only,
                "for a chat shard, compute the loss only on tokens in the loss mask"),
    OPTION_INT ("max-length",           0, &o.max_length,   0, 1 << 20,
                "maximum tokens of a record or window; 0 uses the model's context"),
    OPTION_INT ("micro-tokens",         0, &o.micro_tokens, 1, 1 << 24,
                "token budget of a micro-batch; affects memory, and results only by rounding"),
    SAMPLING_OPTIONS(o.s),
    OPTION_INT ("num-samples",          0, &o.samples,      0, 4096,
                "samples per prompt; 0 computes the greedy accuracy only"),
    EPISODE_OPTIONS(o.episodes),
    THINKING_OPTIONS(o.think),
    OPTION_FLAG("think-ablation",       0, &o.ablation,
                "how much the answers depend on each step of the thoughts, which end with --step-separator"),
    OPTION_GROUP("Tasks"),
    OPTION_TEXT("reward",               0, &o.reward,         "SPEC",
                "weighted rewards for best@k, such as verify:1,format=hash:0.1"),
    OPTION_TEXT("reward-cmd",           0, &o.reward_cmd,     "PROGRAM",
                "reward program: reads one JSON line per completion, prints one number per line"),
    OPTION_REAL("reward-timeout",       0, &o.reward_timeout, 0.01, 1e6,
                "seconds that --reward-cmd may take for the samples of one prompt"),
    OPTION_INT ("reward-workers",       0, &o.reward_workers, 1, 256, "copies of --reward-cmd that run at once"),
    OPTION_FLAG("reward-group",         0, &o.reward_group,
                "give --reward-cmd all completions to a prompt as one line; it prints a list of numbers"),
    OPTION_CHOICE("reward-scope",       0, &o.scope,          "last|all",
                "what checks and rewards read of a completion of several turns: the last turn, or what the model wrote in all"),
    OPTION_CHOICE("rank-options",       0, &o.rank,           "off|" RANK_OF_CHOICES,
                "draw nothing: of the options, choices or endings of each prompt, take the one that is most likely, as text "
                "or as its letter"),
    OPTION_TEXT("target-delimiter",     0, &o.delimiter,      "TEXT",
                "text between prompt and option; if unset, a space where the chat template has nothing"),
    OPTION_FLAG("audit-tests",          0, &o.audit,
                "without a model, list the prompts of the task code whose tests an empty program passes"),
    OPTION_GROUP("Reward models"),
    OPTION_TEXT  ("reward-model",       0, &o.reward_model,   "FILE",
                  "reward model to evaluate, or to choose among samples (best@k, weighted@k)"),
    OPTION_CHOICE("prm-aggregation",    0, &o.aggregation,    PRM_AGGREGATION_CHOICES,
                  "how a process reward model combines the step probabilities; the default is last with --search"),
    JUDGE_OPTIONS(o.judge),
    OPTION_CHOICE("weight",             0, &o.weight,         VOTES_WEIGHTS,
                  "weights of the votes of weighted@k: by --reward-model, or scores that need no other model"),
    SEARCH_OPTIONS(o.search),
    OPTION_GROUP("Comparison"),
    OPTION_TEXT("reference",            0, &o.reference,      "FILE",
                "a second model with the same tokens: exact KL divergences between both, over the whole vocabulary"),
    OPTION_TEXT("tokens",               0, &o.tokens,         "FILE",
                "with --reference, write a JSON line for each token: both log-probabilities, KL, rank, the likeliest"),
    OPTION_GROUP("Output"),
    OPTION_TEXT("completions",          0, &o.completions,    "FILE",
                "write all completions to this file as JSON lines; .zst is compressed"),
    OPTION_TEXT("compute-curve",        0, &o.compute,        "FILE",
                "write accuracy by tokens and FLOPs as JSON lines: of all k, methods of --search, and budgets"),
    OPTION_TEXT("report",               0, &o.report,         "PAGE", "the same as an HTML page with charts"),
    CODE_OPTIONS(o.code),
    OPTION_END
    // clang-format on
};

static const OptionAbout about = {"-c MODEL -i SHARD [options]",
                                  "Evaluates a model (loss on a chat or token shard, accuracy on a prompt shard) or a\n"
                                  "reward model (accuracy, calibration on a preference, unpaired or step shard).\n\n"
                                  "  ./evaluate -c sft.bin -i val.shard\n"
                                  "  ./evaluate -c grpo.bin -i tasks.shard --num-samples 16 "
                                  "--completions samples.jsonl\n"
                                  "  ./evaluate -c grpo.bin -i tasks.shard --num-samples 0 | jq .accuracy\n"
                                  "  ./evaluate --reward-model rm.bin -i held_out.shard\n"
                                  "  ./evaluate -c sft.bin --reward-model rm.bin -i tasks.shard --num-samples 16"};

static Inference model;
static Inputs inputs;  /* the files of --input */
static json_t *result; /* the figures, at first those of a file if there are several */

static void set_number(json_t *object, const char *key, double value) {
    json_object_set_new(object, key, isfinite(value) ? json_real(value) : json_null());
}

static void set_count(json_t *object, const char *key, int64_t value) {
    json_object_set_new(object, key, json_integer(value));
}

/* Updates the progress line if standard error is a terminal. done == all clears it. */
static void progress(int64_t done, int64_t all, const char *what, double start) {
    const double seconds = clock_seconds() - start;
    if (!terminal_escapes(STDERR_FILENO)) return;
    if (done >= all) fputs("\r\033[K", stderr);
    else
        fprintf(stderr, "\r%lld of %lld %s, %.0f s left\033[K", (long long)done, (long long)all, what,
                seconds / (double)done * (double)(all - done));
}

/* ---- loss ------------------------------------------------------------------------------------------------------ */

/* Sums over the targets; sums over units (records or windows) for the standard error. */
typedef struct Loss {
    double nats, right, entropy, targets;
    double text_nats, bytes;          /* of ordinary tokens, if there is a tokenizer */
    double squares[3];                /* sums over units of nats^2, nats * targets, targets^2 */
    int64_t units, cut, rows;         /* units with a target; truncated records; tokens processed */
    int32_t *unit, unit_of_batch;     /* (targets of the batch) unit of each; number of units in the batch */
    double *unit_nats, *unit_targets; /* (units of the batch) */
} Loss;

typedef struct Work {
    Workspace space;
    Batch batch;
    float *logp, *entropy;
    int32_t *argmax;
    Comparison *other; /* with --reference */
    bool sampled;      /* the targets are tokens that the model drew at this temperature */
    float temperature;
    int64_t unit; /* number of the batch's first unit, for --tokens */
    Writer tokens;
} Work;

/* Bytes of text of a token; 0 for special tokens. */
static double token_bytes(int32_t id) {
    const Tokenizer *t = &model.text.tokenizer;
    size_t n = 0;
    if (model.text.present && id < t->vocab && !t->special[id]) tokenizer_token(t, id, &n);
    return (double)n;
}

/* Writes the targets of the batch to the file of --tokens. */
static void write_tokens(Work *w, const int32_t *unit) {
    Error e;
    const Batch *b = &w->batch;
    ComparisonView *view = comparison_views(&model.model, &w->space, b, w->temperature, &e);
    if (!view) die("%s; lower --micro-tokens", e.text);
    for (int32_t r = 0; r < b->targets; r++) {
        json_t *row = json_object(), *top = json_array();
        for (int k = 0; k < COMPARISON_TOP && view[r].top[k] >= 0; k++)
            json_array_append_new(top, json_pack("[i,f]", view[r].top[k], (double)view[r].p[k]));
        set_count(row, "index", w->unit + unit[r]);
        set_count(row, "position", b->positions[b->target_row[r]] + 1);
        set_count(row, "id", b->target_token[r]);
        json_object_set_new(row, "text", inference_json_text(&model, &b->target_token[r], 1, true));
        set_number(row, "logp", w->logp[r]);
        set_number(row, "reference_logp", w->other->apart.logp[r]);
        set_number(row, "entropy", w->entropy[r]);
        set_number(row, "kl", w->other->apart.reverse_kl[r]);
        set_count(row, "rank", view[r].rank);
        json_object_set_new(row, "top", top);
        if (!json_line(&w->tokens, row, &e)) die("%s", e.text);
        json_decref(row);
    }
    free(view);
}

/* Adds the batch to the comparison with the reference. unit: (targets) the sequence of each. */
static void compare_batch(Work *w, const int32_t *unit) {
    Comparison *c = w->other;
    const Batch *b = &w->batch;
    for (int32_t first = 0, end; first < b->targets; first = end) {
        for (end = first; end < b->targets && unit[end] == unit[first];) end++;
        for (int32_t r = first; r < end; r++) {
            comparison_add(c, r, w->logp[r], w->entropy[r], w->argmax[r], (double)(r - first) / (end - first));
            if (w->sampled) comparison_sampled(c, r, w->logp[r]);
        }
    }
    if (o.tokens) write_tokens(w, unit);
    w->unit += unit[b->targets - 1] + 1;
}

/* Runs the batch, adds its results to the sums and clears it. */
static void run_batch(Work *w, Loss *l) {
    Error e;
    const Batch *b = &w->batch;
    const ModelOutput out = {.logp = w->logp, .entropy = w->entropy, .argmax = w->argmax};
    if (!b->targets) return;
    if (w->other) comparison_run(w->other, &model.model, &w->space, b, w->temperature, &out);
    else model_forward(&model.model, &w->space, b, w->temperature, &out);
    if (!model_sync(&model.model, &e)) die("%s", e.text);
    if (w->other) compare_batch(w, l->unit);
    memset(l->unit_nats, 0, (size_t)l->unit_of_batch * sizeof(double));
    memset(l->unit_targets, 0, (size_t)l->unit_of_batch * sizeof(double));
    for (int32_t r = 0; r < b->targets; r++) {
        const double nats = -(double)w->logp[r], bytes = token_bytes(b->target_token[r]);
        l->nats += nats;
        l->entropy += w->entropy[r];
        l->right += w->argmax[r] == b->target_token[r];
        l->bytes += bytes;
        l->text_nats += bytes > 0 ? nats : 0;
        l->unit_nats[l->unit[r]] += nats;
        l->unit_targets[l->unit[r]]++;
    }
    for (int32_t u = 0; u < l->unit_of_batch; u++) {
        const double x = l->unit_nats[u], n = l->unit_targets[u];
        l->squares[0] += x * x;
        l->squares[1] += x * n;
        l->squares[2] += n * n;
    }
    l->targets += b->targets;
    l->units += l->unit_of_batch;
    l->rows += b->rows;
    l->unit_of_batch = 0;
    batch_clear(&w->batch);
}

/* Makes room in the batch for a unit of this many rows and targets; runs the batch first if it is full. */
static void make_room(Work *w, Loss *l, int32_t rows, int32_t targets) {
    if (!batch_fits(&w->batch, rows, targets, 1)) run_batch(w, l);
}

/* Marks the targets added since `before` as one unit. */
static void end_unit(const Work *w, Loss *l, int32_t before) {
    for (int32_t r = before; r < w->batch.targets; r++) l->unit[r] = l->unit_of_batch;
    l->unit_of_batch += w->batch.targets > before;
}

/* Adds the sums over another file. */
static void loss_add(Loss *all, const Loss *l) {
    all->nats += l->nats;
    all->right += l->right;
    all->entropy += l->entropy;
    all->targets += l->targets;
    all->text_nats += l->text_nats;
    all->bytes += l->bytes;
    for (int i = 0; i < 3; i++) all->squares[i] += l->squares[i];
    all->units += l->units;
    all->cut += l->cut;
    all->rows += l->rows;
}

/* longest: positions of the longest sequence. */
static void loss_open(Work *w, Loss *l, int rows, int32_t longest) {
    Error e;
    const size_t n = (size_t)rows;
    *l = (Loss){.unit = (int32_t *)xcalloc(n, sizeof(int32_t)),
                .unit_nats = (double *)xcalloc(n, sizeof(double)),
                .unit_targets = (double *)xcalloc(n, sizeof(double))};
    *w = (Work){.temperature = 1,
                .batch = batch_new(rows, rows, rows),
                .logp = (float *)xcalloc(n, sizeof(float)),
                .entropy = (float *)xcalloc(n, sizeof(float)),
                .argmax = (int32_t *)xcalloc(n, sizeof(int32_t))};
    if (!workspace_new(&w->space, &model.model, rows, rows, rows, false, 0, &e))
        die("%s; lower --micro-tokens", e.text);
    if (!o.reference) return;
    const FitSide side = fit_model(model.name, &model.model.config, &model.file);
    w->other = (Comparison *)xcalloc(1, sizeof *w->other);
    if (!comparison_open(w->other, o.reference, &model.model, &side, rows, longest, &e)) die("%s", e.text);
    if (o.tokens && !writer_open(&w->tokens, o.tokens, &e)) die("%s", e.text);
}

static void loss_close(Work *w, Loss *l) {
    if (w->other) comparison_close(w->other);
    free(w->other);
    workspace_free(&w->space, &model.model), batch_free(&w->batch);
    free(w->logp), free(w->entropy), free(w->argmax), free(l->unit), free(l->unit_nats), free(l->unit_targets);
}

/* Accumulates the loss on the records of a chat shard. */
static void chat_loss(Work *w, Loss *l, const Shard *s, int64_t count, int32_t limit) {
    Error e;
    Record r = {0};
    const double start = clock_seconds();
    for (int64_t i = 0; i < count && !program_stopping(); i++) {
        if (!shard_record(s, i, &r, &e)) die("%s", e.text);
        l->cut += r.count > limit;
        if (r.count > limit) r.count = limit;
        make_room(w, l, r.count, r.count);
        const int32_t before = w->batch.targets;
        batch_sequence(&w->batch, r.tokens, o.completion_only ? r.mask : NULL, r.count);
        end_unit(w, l, before);
        if (!before) progress(i + 1, count + 1, "records", start);
    }
    run_batch(w, l);
    progress(count, count, "records", start);
    record_free(&r);
}

/* Accumulates the loss on windows of T tokens. The last target of a window is the first token of the next window. */
static void token_loss(Work *w, Loss *l, const TokenShard *t, int64_t windows, int32_t T) {
    int32_t *ids = (int32_t *)xmalloc((size_t)T * sizeof *ids);
    const double start = clock_seconds();
    for (int64_t i = 0; i < windows && !program_stopping(); i++) {
        const int64_t from = i * T, left = t->count - 1 - from;
        const int32_t n = left < T ? (int32_t)left : T;
        for (int32_t k = 0; k < n; k++) ids[k] = token_at(t, from + k);
        make_room(w, l, n, n);
        const int32_t before = w->batch.targets, row = w->batch.rows;
        batch_segment(&w->batch, ids, n, 0, -1);
        for (int32_t k = 0; k < n; k++) batch_target(&w->batch, row + k, token_at(t, from + k + 1));
        end_unit(w, l, before);
        if (!before) progress(i + 1, windows + 1, "windows", start);
    }
    run_batch(w, l);
    progress(windows, windows, "windows", start);
    free(ids);
}

/* Reports the loss and the other figures. The error is the standard error of a ratio of sums over units. */
static void report_loss(const Loss *l, const char *units, double seconds) {
    const double N = l->targets, U = (double)l->units, loss = l->nats / N;
    const double spread = l->squares[0] - 2 * loss * l->squares[1] + loss * loss * l->squares[2];
    const double error = U > 1 ? sqrt(fmax(spread, 0) * U / (U - 1)) / N : NAN;
    const double bits = l->bytes > 0 ? l->text_nats / M_LN2 / l->bytes : NAN;
    fputs("|                  |          value |      error |\n", stderr);
    fputs("|------------------|----------------|------------|\n", stderr);
    fprintf(stderr, "| %-16s | %14.5f | %10.5f |\n", "loss", loss, error);
    fprintf(stderr, "| %-16s | %14.4f | %10.4f |\n", "perplexity", exp(loss), exp(loss) * error);
    if (isfinite(bits)) fprintf(stderr, "| %-16s | %14.5f |            |\n", "bits per byte", bits);
    fprintf(stderr, "| %-16s | %12.2f %% |            |\n", "token accuracy", 100 * l->right / N);
    fprintf(stderr, "| %-16s | %14.5f |            |\n", "entropy", l->entropy / N);
    fprintf(stderr, "%lld %s, %.0f tokens predicted, %lld processed in %.2f s, %.0f tok/s\n", (long long)l->units,
            units, N, (long long)l->rows, seconds, (double)l->rows / seconds);
    set_number(result, "loss", loss);
    set_number(result, "loss_error", error);
    set_number(result, "perplexity", exp(loss));
    set_number(result, "bits_per_byte", bits);
    set_number(result, "token_accuracy", l->right / N);
    set_number(result, "entropy", l->entropy / N);
    set_count(result, "tokens", (int64_t)N);
    set_count(result, units, l->units);
    json_object_set_new(result, "bytes", model.text.present ? json_integer((json_int_t)l->bytes) : json_null());
}

/* Reports the comparison with the reference, and ends the file of --tokens. */
static void report_comparison(Work *w) {
    Error e;
    Comparison *c = w->other;
    const ComparisonSums *s = &c->all;
    const double n = s->targets;
    const struct {
        const char *key, *name;
        double value;
    } rows[] = {{"kl", "KL(model || reference)", s->kl / n},
                {"reference_kl", "KL(reference || model)", s->reverse / n},
                {"js", "Jensen-Shannon divergence", s->js / n},
                {"model_nll", "model's loss", s->nats / n},
                {"reference_nll", "reference's loss", s->reference_nats / n},
                {"model_entropy", "model's entropy", s->entropy / n},
                {"reference_entropy", "reference's entropy", s->reference_entropy / n},
                {"agreement", "same most likely token", s->agreement / n}};
    json_t *figures = json_object(), *deciles = json_array();
    fprintf(stderr, "compared with %s at %.0f tokens%s, exactly:\n", c->name, n,
            w->sampled ? " that the model drew" : "");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fprintf(stderr, "| %-26s | %10.6f |\n", rows[i].name, rows[i].value);
        set_number(figures, rows[i].key, rows[i].value);
    }
    fputs("| KL by tenth of a sequence  |", stderr);
    for (int i = 0; i < COMPARISON_DECILES; i++) {
        const ComparisonSums *d = &c->decile[i];
        json_t *row = json_object();
        set_count(row, "tokens", (int64_t)d->targets);
        set_number(row, "kl", d->kl / d->targets);
        set_number(row, "reference_kl", d->reverse / d->targets);
        json_array_append_new(deciles, row);
        if (d->targets > 0) fprintf(stderr, " %.4f", d->kl / d->targets);
        else fputs(" -", stderr);
    }
    fputs("\n", stderr);
    for (int i = 0; i < COMPARISON_ESTIMATORS && c->sampled; i++) {
        double error, deviation;
        char key[32];
        const double mean = comparison_estimate(c, i, &error, &deviation);
        fprintf(stderr, "| k%d                         | %10.6f +- %.6f, standard deviation of a token %.4f\n", i + 1,
                mean, error, deviation);
        snprintf(key, sizeof key, "k%d", i + 1);
        set_number(figures, key, mean);
        snprintf(key, sizeof key, "k%d_error", i + 1);
        set_number(figures, key, error);
        snprintf(key, sizeof key, "k%d_deviation", i + 1);
        set_number(figures, key, deviation);
    }
    json_object_set_new(figures, "model", json_string(c->name));
    set_count(figures, "tokens", (int64_t)n);
    json_object_set_new(figures, "deciles", deciles);
    json_object_set_new(result, "reference", figures);
    if (o.tokens && !writer_commit(&w->tokens, &e)) die("%s", e.text);
}

/* Evaluates the loss on a chat shard, or on a token shard, read from f, if chat is NULL. Adds its sums to *all. */
static void evaluate_loss(const char *name, DataFile *f, const Shard *chat, Loss *all) {
    Error e;
    Work w;
    Loss l;
    TokenShard t = {0};
    const int32_t context = model.model.config.context;
    const int32_t T = o.max_length && o.max_length < context ? (int32_t)o.max_length : context;
    int64_t units;
    if (chat) {
        units = chat->count;
    } else {
        if (!tokens_read(&t, &f->in, model.model.config.vocab, &e)) die("%s", e.text);
        units = t.count > 1 ? (t.count - 1 + T - 1) / T : 0;
    }
    if (!units) die("%s: the shard is empty", name);
    if (o.most && o.most < units) units = o.most;
    const int32_t longest = chat && chat->longest < T ? chat->longest : T;
    const double start = clock_seconds();
    loss_open(&w, &l, o.micro_tokens > longest ? (int)o.micro_tokens : longest, longest);
    if (chat) chat_loss(&w, &l, chat, units, T);
    else token_loss(&w, &l, &t, units, T);
    if (!l.targets) die("%s: no record has a token to predict%s", name, l.cut ? " within the model's context" : "");
    if (l.cut)
        warn("%s: %lld of %lld records are longer than %d tokens and were truncated", name, (long long)l.cut,
             (long long)units, T);
    if (chat) set_count(result, "cut", l.cut);
    report_loss(&l, chat ? "records" : "windows", clock_seconds() - start);
    if (w.other && !program_stopping()) report_comparison(&w);
    loss_add(all, &l);
    loss_close(&w, &l);
    tokens_close(&t);
    if (program_stopping()) die("stopped by a signal before the end of %s", name);
}

/* Begins the figures of one of several files. */
static void begin_file(const char *name) {
    result = json_object();
    json_object_set_new(result, "data", json_string(name));
    fprintf(stderr, "%s:\n", name);
}

/* Ends them. */
static void end_file(json_t *files) { json_array_append_new(files, result); }

/* Goes on with the figures of all files. */
static void begin_all(json_t *all, json_t *files) {
    result = all;
    json_object_set_new(result, "files", files);
    fputs("all:\n", stderr);
}

/* Evaluates the loss on each of several files, and on all. */
static void evaluate_losses(const Shard *chat) {
    Error e;
    Loss all = {0};
    json_t *together = result, *files = json_array();
    const double start = clock_seconds();
    for (int k = 0; k < inputs.count; k++) {
        DataFile f;
        begin_file(inputs.path[k]);
        if (chat) evaluate_loss(inputs.path[k], NULL, &chat->part[k], &all);
        else {
            if (!data_file_open(&f, inputs.path[k], &e)) die("%s", e.text);
            evaluate_loss(inputs.path[k], &f, NULL, &all);
            data_file_close(&f);
        }
        end_file(files);
    }
    begin_all(together, files);
    if (chat) set_count(result, "cut", all.cut);
    report_loss(&all, chat ? "records" : "windows", clock_seconds() - start);
}

/* ---- tasks ----------------------------------------------------------------------------------------------------- */

typedef struct Tasks {
    Prompts prompts;
    Evaluation all;
    Rewards rewards;
    RewardModel judge;
    const Sampling *how;
    bool rewarded; /* by rewards or by the judge */
    CodeJudge code;
    Judge language_judge; /* of the parts `judge` of the rewards */
    Writer out;           /* --completions */
    Writer curve, page;   /* --compute-curve, --report */
    Work *work;           /* --reference */
    Loss *loss;
    Ablation *ablation;                      /* --think-ablation */
    const char *search;                      /* --search: the method that is running */
    int32_t budget;                          /* --think-tokens: of this run; 0: none */
    double thoughts, thought_tokens, within; /* completions, tokens of their thoughts, and those within the budget */
    struct TurnTotals {
        double completions, turns, calls, failed;
        double stop[STOP_COUNT];
    } turns;     /* --tools */
    Error error; /* error of the first line that could not be written; see failed */
    bool failed;
} Tasks;

/* Reads the prompts of a shard, which goes on belonging to the caller. Those of more than `limit` tokens are left out. */
static void read_prompts(Prompts *p, const Shard *s, int32_t limit) {
    Error e;
    *p = (Prompts){.shard = *s};
    if (!prompts_read(p, limit, &e)) die("%s", e.text);
    if (p->dropped)
        warn("%s: %lld prompts are longer than %d tokens and were left out", s->name, (long long)p->dropped, limit);
}

static void release_prompts(Prompts *p) {
    p->shard = (Shard){0};
    prompts_close(p);
}

/* Prompt i as a row for --completions. Fields of the prompt with names of the program's own are kept in `fields`. */
static json_t *prompt_row(const Prompts *p, int64_t i) {
    const PromptText *what = &p->what[i];
    const Record r = {.tokens = (int32_t *)prompts_tokens(p, i),
                      .count = prompts_length(p, i),
                      .text = what->text,
                      .task = what->task,
                      .answer = what->answer,
                      .fields = what->fields};
    static const char *const own[] = {"data",         "search", "think_budget", "think_tokens", "logprobs",
                                      "ignored_ends", "drawn",  "stop",         "turn_rewards", "choice"};
    json_t *row = inference_prompt_row(&model, &r);
    for (size_t k = 0; k < sizeof own / sizeof *own; k++) {
        json_t *value = json_object_get(row, own[k]);
        if (!value) continue;
        if (!json_object_get(row, "fields")) json_object_set_new(row, "fields", json_object());
        json_object_set(json_object_get(row, "fields"), own[k], value);
        json_object_del(row, own[k]);
    }
    set_count(row, "index", i);
    if (inputs.count > 1) json_object_set_new(row, "data", json_string(inputs.path[what->file]));
    return row;
}

/* Writes a completion to the file of --completions. */
static void write_completion(Tasks *t, const EvaluationSample *s) {
    const Completion *c = s->completion;
    json_t *row = prompt_row(&t->prompts, s->prompt), *tokens = json_array();
    double logprob = 0;
    for (int32_t i = 0; i < c->count; i++) {
        logprob += c->logp[i];
        json_array_append_new(tokens, json_integer(c->tokens[i]));
    }
    json_object_set_new(row, "sample", s->sample < 0 ? json_string("greedy") : json_integer(s->sample));
    json_object_set_new(row, "completion", inference_completion_text(&model, t->how, c));
    json_object_set_new(row, "right", isnan(s->right) ? json_null() : json_boolean(s->right > 0.5));
    if (t->rewarded) set_number(row, "reward", s->reward);
    json_object_set_new(row, "tokens", tokens);
    json_object_set_new(row, "finished", json_boolean(c->finished));
    json_object_set_new(row, "logprob", json_real(logprob));
    if (t->search) json_object_set_new(row, "search", json_string(t->search));
    if (t->budget && t->budget < THINKING_INFINITE) set_count(row, "think_budget", t->budget);
    if (t->budget) thinking_row(row, c);
    else episode_row(row, c);
    if (!t->failed) t->failed = !json_line(&t->out, row, &t->error);
    json_decref(row);
}

/* Adds a sampled completion to the comparison with the reference. */
static void compare_completion(Tasks *t, const EvaluationSample *s) {
    const Completion *c = s->completion;
    Work *w = t->work;
    const int32_t *prompt = prompts_tokens(&t->prompts, s->prompt), n = prompts_length(&t->prompts, s->prompt);
    if (s->sample < 0 || !c->count) return;
    int32_t *ids = (int32_t *)xmalloc((size_t)(n + c->count) * sizeof *ids);
    memcpy(ids, prompt, (size_t)n * sizeof *ids);
    memcpy(ids + n, c->tokens, (size_t)c->count * sizeof *ids);
    make_room(w, t->loss, n + c->count, c->count);
    const int32_t before = w->batch.targets, row = w->batch.rows;
    const uint8_t *drawn = completion_mask(c); /* tokens that the model did not draw are context */
    batch_segment(&w->batch, ids, n + c->count - 1, 0, -1);
    for (int32_t k = 0; k < c->count; k++)
        if (!drawn || drawn[k]) batch_target(&w->batch, row + n - 1 + k, c->tokens[k]);
    end_unit(w, t->loss, before);
    free(ids);
}

/* ---- compute ---- */

/* Rows of a model, pairs of attention and drawn tokens: of prompts, and of completions. */
typedef struct Cost {
    double count, rows, pairs;
} Cost;

/* The points of --compute-curve. prompt, greedy, sample: costs by which the FLOPs of methods without search are computed. */
static struct {
    ComputePoint *point;
    int points;
    int *part; /* (prompts) the fifth of the prompts by difficulty; -1: cannot be verified */
    Cost prompt, greedy, sample;
} curve;

/* Adds what a completion cost after its prompt of n tokens. */
static void curve_count(const EvaluationSample *s, int32_t n) {
    Cost *c = s->sample < 0 ? &curve.greedy : &curve.sample;
    const double rows = s->completion->count;
    c->count++;
    c->rows += rows;
    c->pairs += rows * n + 0.5 * rows * rows;
    if (s->sample >= 0) return;
    curve.prompt.count++;
    curve.prompt.rows += n;
    curve.prompt.pairs += 0.5 * (double)n * n;
}

/* Counts the tokens of a thought: of the samples, or of the greedy completions if there are no samples. */
static void count_thought(Tasks *t, const EvaluationSample *s) {
    if (!t->budget || (s->sample < 0 && o.samples)) return;
    const int32_t thought = s->completion->trajectory->thought;
    t->thoughts++;
    t->thought_tokens += thought;
    t->within += thought <= t->budget;
}

/* Counts the turns and calls of a completion: of the samples, or of the greedy completions if there are no samples. */
static void count_turns(Tasks *t, const EvaluationSample *s) {
    const Trajectory *y = s->completion->trajectory;
    if (!y || !episodes_on(&o.episodes) || (s->sample < 0 && o.samples)) return;
    t->turns.completions++;
    t->turns.turns += y->turns;
    t->turns.calls += y->counts.calls;
    t->turns.failed += y->counts.failed_calls;
    t->turns.stop[y->stop]++;
}

/* Reports turns, calls and why completions ended. */
static void report_turns(const struct TurnTotals *n) {
    json_t *stops = json_object();
    if (!n->completions) return;
    set_number(result, "turns_mean", n->turns / n->completions);
    set_number(result, "tool_calls_mean", n->calls / n->completions);
    set_number(result, "tool_failures", n->calls ? n->failed / n->calls : 0);
    fprintf(stderr, "%.2f turns and %.2f calls per completion, %.1f %% of the calls failed; ended by",
            n->turns / n->completions, n->calls / n->completions, n->calls ? 100 * n->failed / n->calls : 0);
    const char *comma = "";
    for (int k = STOP_COMPLETED; k < STOP_COUNT; k++) {
        if (!n->stop[k]) continue;
        const char *name = trajectory_stop_name((TrajectoryStop)k);
        set_number(stops, name, n->stop[k] / n->completions);
        fprintf(stderr, "%s %s %.1f %%", comma, name, 100 * n->stop[k] / n->completions);
        comma = ",";
    }
    fputc('\n', stderr);
    json_object_set_new(result, "stop", stops);
}

/* Takes a completion: writes it to the file of --completions, compares it with the reference. */
static void take_completion(void *context, const EvaluationSample *s) {
    Tasks *t = (Tasks *)context;
    const int32_t *prompt = prompts_tokens(&t->prompts, s->prompt);
    count_thought(t, s);
    if (t->ablation && !t->failed && (s->sample >= 0 || !o.samples))
        t->failed = !ablation_add(t->ablation, prompt, prompts_length(&t->prompts, s->prompt), s->completion->tokens,
                                  s->completion->count, &t->error);
    if (o.compute && !t->search) curve_count(s, prompts_length(&t->prompts, s->prompt));
    count_turns(t, s);
    if (o.completions) write_completion(t, s);
    if (t->work) compare_completion(t, s);
}

/* Adds the figures to a JSON object. */
static void report_json(json_t *object, const Evaluation *v, bool rewarded) {
    const bool weighted = evaluation_weighted(v);
    double low, high;
    char key[32];
    wilson_interval(v->greedy, (double)v->prompts, &low, &high);
    set_number(object, "accuracy", v->greedy);
    set_number(object, "accuracy_error", v->greedy_error);
    set_number(object, "accuracy_low", low);
    set_number(object, "accuracy_high", high);
    set_number(object, "mean_length", v->tokens);
    set_number(object, "finished", v->finished);
    set_count(object, "prompts", v->prompts);
    set_count(object, "unscorable", v->unscorable);
    if (v->lost) set_count(object, "samples_lost", v->lost);
    for (int k = 0; k < v->ks; k++) {
        const struct {
            const char *name;
            double value, error;
        } rows[] = {{"pass", v->pass[k], v->pass_error[k]},
                    {"majority", v->majority[k], v->majority_error[k]},
                    {"best", v->best[k], v->best_error[k]},
                    {"weighted", v->weighted[k], v->weighted_error[k]}};
        for (int i = 0; i < 4; i++) {
            if ((i == 2 && !rewarded) || (i == 3 && !weighted)) continue;
            snprintf(key, sizeof key, "%s@%d", rows[i].name, v->k[k]);
            set_number(object, key, rows[i].value);
            snprintf(key, sizeof key, "%s@%d_error", rows[i].name, v->k[k]);
            set_number(object, key, rows[i].error);
        }
    }
    if (rewarded) {
        set_number(object, "reward", v->reward);
        set_number(object, "reward_error", v->reward_error);
    }
}

/* Prints a cell of the table: "81.2 +- 1.3", or "-" if it is undefined. */
static void cell(double value, double error) {
    if (isnan(value)) fprintf(stderr, " %13s |", "-");
    else if (isnan(error)) fprintf(stderr, " %5.1f        |", 100 * value);
    else fprintf(stderr, " %5.1f +- %4.1f |", 100 * value, 100 * error);
}

static void report_table(const char *name, const Evaluation *v, bool rewarded) {
    double low, high;
    wilson_interval(v->greedy, (double)v->prompts, &low, &high);
    fprintf(stderr, "%s: %lld prompts", name, (long long)v->prompts);
    if (v->unscorable) fprintf(stderr, " and %lld that cannot be verified", (long long)v->unscorable);
    if (v->lost) fprintf(stderr, "; %lld samples were lost and do not count", (long long)v->lost);
    if (v->prompts)
        fprintf(stderr, "\n  greedy accuracy %.2f %%, 95 %% interval %.2f to %.2f; %.1f tokens, %.1f %% finished\n",
                100 * v->greedy, 100 * low, 100 * high, v->tokens, 100 * v->finished);
    else fprintf(stderr, "\n  greedy completions: %.1f tokens, %.1f %% finished\n", v->tokens, 100 * v->finished);
    if (rewarded) fprintf(stderr, "  reward of the samples %.4f +- %.4f\n", v->reward, v->reward_error);
    if (!v->ks || !v->prompts) return;
    fprintf(stderr, "  |    k |        pass@k |    majority@k |%s%s\n", rewarded ? "        best@k |" : "",
            evaluation_weighted(v) ? "    weighted@k |" : "");
    for (int k = 0; k < v->ks; k++) {
        fprintf(stderr, "  | %4d |", v->k[k]);
        cell(v->pass[k], v->pass_error[k]);
        cell(v->majority[k], v->majority_error[k]);
        if (rewarded) cell(v->best[k], v->best_error[k]);
        if (evaluation_weighted(v)) cell(v->weighted[k], v->weighted_error[k]);
        fputc('\n', stderr);
    }
}

/* Reports how the judge did. */
static void report_judge(const Judge *j) {
    TextBuffer figures = {0};
    judge_figures_text(&j->sums, &figures);
    fprintf(stderr, "judge: %s\n", figures.text);
    json_object_set_new(result, "judge", judge_figures_json(&j->sums));
    text_free(&figures);
}

/* FLOPs for a prompt and k completions. head: a token is drawn from each row of a completion. */
static double curve_flops(const ModelConfig *c, const Cost *completion, double k, bool head) {
    const Cost *p = &curve.prompt;
    const double rows = completion->count ? k * completion->rows / completion->count : 0,
                 pairs = completion->count ? k * completion->pairs / completion->count : 0;
    return model_flops(c, p->rows / p->count + rows, head ? rows : 0, p->pairs / p->count + pairs, 1);
}

/* Adds a point. by_prompt: whether each prompt was right, at `stride` bytes; NULL: unknown. */
static void curve_point(ComputePoint point, double error, const void *by_prompt, size_t stride, int64_t count) {
    double right[COMPUTE_PARTS] = {0}, prompts[COMPUTE_PARTS] = {0};
    point.low = fmax(point.accuracy - 1.959963984540054 * error, 0);
    point.high = fmin(point.accuracy + 1.959963984540054 * error, 1);
    for (int64_t i = 0; i < count && by_prompt; i++) {
        const double x = *(const double *)((const char *)by_prompt + (size_t)i * stride);
        if (curve.part[i] < 0 || isnan(x)) continue;
        right[curve.part[i]] += x;
        prompts[curve.part[i]]++;
    }
    for (int k = 0; k < COMPUTE_PARTS; k++) point.part[k] = prompts[k] ? right[k] / prompts[k] : NAN;
    curve.point = (ComputePoint *)xrealloc(curve.point, (size_t)curve.points + 1, sizeof *curve.point);
    curve.point[curve.points++] = point;
}

static int by_pass(const void *a, const void *b, void *outcomes) {
    const Outcome *x = (const Outcome *)outcomes;
    const int i = *(const int *)a, j = *(const int *)b;
    const double p = x[i].pass[0], q = x[j].pass[0];
    return p > q ? -1 : p < q ? 1 : (i > j) - (i < j);
}

/* Divides the prompts into fifths by how often a sample is right. */
static void curve_parts(const Outcome *outcome, int64_t count) {
    int *order = (int *)xcalloc((size_t)count + 1, sizeof *order), n = 0;
    curve.part = (int *)xrealloc(curve.part, (size_t)count + 1, sizeof *curve.part);
    for (int64_t i = 0; i < count; i++) {
        curve.part[i] = -1;
        if (outcome[i].scorable && o.samples && !isnan(outcome[i].pass[0])) order[n++] = (int)i;
    }
    qsort_r(order, (size_t)n, sizeof *order, by_pass, (void *)outcome);
    for (int i = 0; i < n; i++) curve.part[order[i]] = (int)((int64_t)i * COMPUTE_PARTS / n);
    free(order);
}

/* Adds the points of samples without search: greedy, and pass, majority, best and weighted for each k. */
static void curve_samples(const Tasks *t, const Outcome *outcome, int64_t count) {
    const Evaluation *v = &t->all;
    const ModelConfig *c = &model.model.config;
    curve_parts(outcome, count);
    curve_point((ComputePoint){.method = "greedy",
                               .parameter = NAN,
                               .tokens = curve.greedy.rows / curve.greedy.count,
                               .flops = curve_flops(c, &curve.greedy, 1, true),
                               .accuracy = v->greedy},
                v->greedy_error, &outcome->greedy, sizeof *outcome, count);
    const struct {
        const char *method;
        const double *value, *error;
        size_t at;
        bool judged, shown;
    } all[] = {
        {"pass", v->pass, v->pass_error, offsetof(Outcome, pass), false, true},
        {"majority", v->majority, v->majority_error, offsetof(Outcome, majority), false, true},
        {"best", v->best, v->best_error, offsetof(Outcome, best), v->judge, t->rewarded},
        {"weighted", v->weighted, v->weighted_error, offsetof(Outcome, weighted), v->judge && v->vote == VOTES_REWARD,
         evaluation_weighted(v)},
    };
    for (size_t m = 0; m < sizeof all / sizeof *all; m++)
        for (int k = 0; k < v->ks && all[m].shown; k++) {
            const double n = v->k[k], rows = n * curve.sample.rows / curve.sample.count;
            const bool judged = all[m].judged;
            ComputePoint point = {.method = all[m].method,
                                  .parameter = n,
                                  .tokens = rows,
                                  .prm_tokens = judged ? rows + curve.prompt.rows / curve.prompt.count : 0,
                                  .flops = curve_flops(c, &curve.sample, n, true),
                                  .accuracy = all[m].value[k]};
            if (judged) point.flops += curve_flops(&v->judge->model.config, &curve.sample, n, false);
            curve_point(point, all[m].error[k], (const char *)outcome + all[m].at + (size_t)k * sizeof(double),
                        sizeof *outcome, count);
        }
}

/* Writes the rows and the page. */
static bool curve_write(Tasks *t, Error *e) {
    bool ok = true;
    for (int i = 0; ok && i < curve.points; i++) {
        json_t *row = compute_json(&curve.point[i]);
        ok = json_line(&t->curve, row, e);
        json_decref(row);
    }
    ok = ok && writer_commit(&t->curve, e);
    if (ok && o.report) {
        char *page = NULL, what[600];
        size_t n = 0;
        FILE *f = (FILE *)checked_object(open_memstream(&page, &n), "a stream in memory");
        snprintf(what, sizeof what, "%.280s on %.280s", model.name, t->prompts.shard.name);
        compute_page(f, what, curve.point, curve.points);
        if (fclose(f)) die("out of memory: a page");
        ok = writer_write(&t->page, page, n, e) && writer_commit(&t->page, e);
        free(page);
    }
    free(curve.point), free(curve.part);
    return ok;
}

/* The prompts in groups: those of a task, of a cluster of tasks, or of a file. */
typedef struct Groups {
    int64_t prompts;
    int count;
    int *of;           /* (prompts) the group of each; -1: none */
    const char **name; /* (count) */
} Groups;

/* Reports the figures of the prompts of a group as JSON, and on standard error unless title is NULL. */
typedef json_t *(*GroupFigures)(const void *context, const Groups *g, int group, const char *title);

static Groups groups_new(int64_t prompts) {
    return (Groups){.prompts = prompts, .of = (int *)xcalloc((size_t)prompts + 1, sizeof(int))};
}

static void groups_free(Groups *g) { free(g->of), free(g->name); }

static void groups_add(Groups *g, const char *name) {
    g->name = (const char **)xrealloc(g->name, (size_t)g->count + 1, sizeof *g->name);
    g->name[g->count++] = name;
}

static bool groups_empty(const Groups *g, int group) {
    for (int64_t i = 0; i < g->prompts; i++)
        if (g->of[i] == group) return false;
    return true;
}

static int by_task(const void *a, const void *b, void *prompts) {
    const PromptText *what = ((const Prompts *)prompts)->what;
    const int64_t i = *(const int64_t *)a, j = *(const int64_t *)b;
    const int order = strcmp(what[i].task, what[j].task);
    return order ? order : (i > j) - (i < j);
}

/* Reports the same figures for each task of the first `count` prompts; prints tables only if there are several tasks. */
static void report_tasks(const Prompts *p, int64_t count, GroupFigures figures, const void *context) {
    Groups g = groups_new(count);
    int64_t *order = (int64_t *)xmalloc((size_t)count * sizeof *order);
    json_t *tasks = json_object();
    for (int64_t i = 0; i < count; i++) order[i] = i;
    qsort_r(order, (size_t)count, sizeof *order, by_task, (void *)p);
    for (int64_t i = 0; i < count; i++) {
        const char *task = p->what[order[i]].task;
        if (!g.count || strcmp(g.name[g.count - 1], task) != 0) groups_add(&g, task);
        g.of[order[i]] = g.count - 1;
    }
    for (int k = 0; k < g.count; k++) {
        const char *title = *g.name[k] ? g.name[k] : "(no task)";
        json_object_set_new(tasks, g.name[k], figures(context, &g, k, g.count > 1 ? title : NULL));
    }
    json_object_set_new(result, "tasks", tasks);
    groups_free(&g), free(order);
}

/* The place of prompt i's cluster of tasks in the shard's list; -1: it has none. */
static int prompt_cluster(const Prompts *p, int64_t i) {
    const json_t *all = p->shard.clusters;
    const PromptText *what = &p->what[i];
    const char *field = json_string_value(json_object_get(all, "field"));
    if (!strcmp(field, "task")) return *what->task ? clusters_find(all, what->task) : -1;
    json_t *fields = json_loads(what->fields, JSON_ALLOW_NUL, NULL);
    const char *name = json_string_value(json_object_get(fields, field));
    const int place = name ? clusters_find(all, name) : -1;
    json_decref(fields);
    return place;
}

/* Reports the same figures for each cluster of tasks of the shard, and whether the model was trained on it, according to its
 * lineage. */
static void report_clusters(const Prompts *p, int64_t count, GroupFigures figures, const void *context) {
    static const char *const texts[] = {"its training does not say whether it has seen them", "seen in training",
                                        "not seen in training"};
    const json_t *names = json_object_get(p->shard.clusters, "clusters");
    if (!json_array_size(names)) return;
    Groups g = groups_new(count);
    json_t *clusters = json_object();
    for (size_t k = 0; k < json_array_size(names); k++) groups_add(&g, json_string_value(json_array_get(names, k)));
    for (int64_t i = 0; i < count; i++) g.of[i] = prompt_cluster(p, i);
    for (int k = 0; k < g.count; k++) {
        if (groups_empty(&g, k)) continue;
        const ClusterTrained was = clusters_trained(model.file.lineage, g.name[k]);
        TextBuffer title = {0};
        text_format(&title, "cluster %s, %s", g.name[k], texts[was]);
        json_t *row = figures(context, &g, k, title.text);
        json_object_set_new(row, "seen", was == CLUSTER_UNKNOWN ? json_null() : json_boolean(was == CLUSTER_TRAINED));
        json_object_set_new(clusters, g.name[k], row);
        text_free(&title);
    }
    json_object_set_new(result, "clusters", clusters);
    groups_free(&g);
}

/* Reports the same figures for each file if there are several. */
static void report_files(const Prompts *p, int64_t count, GroupFigures figures, const void *context) {
    if (inputs.count < 2) return;
    Groups g = groups_new(count);
    json_t *files = json_array();
    for (int64_t i = 0; i < count; i++) g.of[i] = p->what[i].file;
    for (int k = 0; k < inputs.count; k++) {
        groups_add(&g, inputs.path[k]);
        json_t *row = figures(context, &g, k, inputs.path[k]);
        json_object_set_new(row, "data", json_string(inputs.path[k]));
        json_array_append_new(files, row);
    }
    json_object_set_new(result, "files", files);
    groups_free(&g);
}

/* GroupFigures of a Tasks. */
static json_t *tasks_figures(const void *tasks, const Groups *g, int group, const char *title) {
    const Tasks *t = (const Tasks *)tasks;
    Evaluation v = {.samples = t->all.samples, .judge = t->all.judge, .vote = t->all.vote};
    Outcome *part = (Outcome *)xmalloc((size_t)g->prompts * sizeof *part);
    json_t *figures = json_object();
    int64_t n = 0;
    for (int64_t i = 0; i < g->prompts; i++)
        if (g->of[i] == group) part[n++] = t->all.outcome[i];
    evaluation_summarise(&v, part, n);
    report_json(figures, &v, t->rewarded);
    if (title) report_table(title, &v, t->rewarded);
    free(part);
    return figures;
}

/* Opens the reward model of --reward-model. */
static void open_reward_model(RewardModel *r, const Backend *b, Device *d) {
    Error e;
    if (!reward_model_open(r, o.reward_model, b, d, (int)o.micro_tokens, &e)) die("%s", e.text);
    r->aggregation = (PrmAggregation)o.aggregation;
    if (option_given(&o.aggregation) && o.aggregation != PRM_MIN && r->note.kind != REWARD_MODEL_PRM)
        usage_error("--prm-aggregation: %s is not a process reward model", r->name);
}

/* Ends the program unless the reward model can be run on tokens of `other`; see model_fits(). */
static void check_reward_model(const RewardModel *r, const FitSide *other, int32_t longest) {
    Error e, note = {0};
    if (!reward_model_fits(r, other, longest, &note, &e)) die("%s", e.text);
    if (note.text[0]) warn("%s", note.text);
}

/* Checks what search needs before anything is drawn, and sets the separator. */
static void check_search(const RewardModel *prm) {
    const int32_t step = prm->note.step_token;
    if (!o.search.methods) return;
    if (prm->note.kind != REWARD_MODEL_PRM)
        die("--search: %s is %s reward model; the steps of a solution are scored by a process model (train_rm --kind prm)",
            prm->name, prm->note.kind == REWARD_MODEL_BT ? "a Bradley-Terry" : "an outcome");
    inference_need_tokenizer(&model);
    if (!o.search.separator) {
        if (step < 0) die("--search: %s does not say what ends a step; give --step-separator", prm->name);
        size_t n;
        const char *text = tokenizer_token(&model.text.tokenizer, step, &n);
        o.search.separator = xstrndup(text, n);
    }
    if (!*o.search.separator) usage_error("--step-separator: the text is empty");
}

/* Opens the sandbox if completions are programs, and reads their tests. */
static void open_code(Tasks *t) {
    Error e;
    PromptsCode c;
    const bool verifies = prompts_run(&t->prompts, NULL), scores = prompts_run(&t->prompts, &t->rewards);
    const OptionUse use[] = {
        CODE_USES(o.code, verifies || scores, episodes_code(&o.episodes), "used only for prompts of the task code")};
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    if (!verifies && !scores) return;
    if (!code_judge_open(&t->code, &o.code, &e) ||
        !prompts_read_code(&t->prompts, scores ? &t->rewards : NULL, &t->code, &c, &e))
        die("%s", e.text);
    t->all.code = t->rewards.code = &t->code.scorer;
    fprintf(stderr, "%lld prompts with %lld tests, %.1f %% of them weak; sandbox %s\n", (long long)c.prompts,
            (long long)c.tests, c.tests ? 100.0 * (double)c.weak / (double)c.tests : 0, sandbox_name(&t->code.sandbox));
    if (c.unusable)
        warn("%s: completions of %lld of %lld prompts cannot be scored: %s", t->prompts.shard.name,
             (long long)c.unusable, (long long)c.prompts, c.why);
    prompts_code_free(&c);
}

static void open_tasks(Tasks *t, const Shard *s) {
    Error e;
    const int32_t limit = model.model.config.context - 1;
    read_prompts(&t->prompts, s, limit);
    if (!t->rewarded && !evaluation_verifiable(&t->prompts))
        die("%s: no prompt has a task and an answer that can be verified; see llmc/reward/verify.h", s->name);
    if (o.reward_model) {
        open_reward_model(&t->judge, model.backend, model.device);
        const int64_t most = t->prompts.longest + o.s.max_new;
        const FitSide policy = fit_model(model.name, &model.model.config, &model.file);
        check_reward_model(&t->judge, &policy, most <= limit ? (int32_t)most : limit + 1);
        check_search(&t->judge);
        t->all.judge = &t->judge;
    } else if (t->rewarded && !rewards_open(&t->rewards, o.reward, o.reward_cmd, o.reward_timeout, (uint64_t)o.s.seed,
                                            (int32_t)o.s.max_new, &e))
        usage_error("%s", e.text);
    if (!judge_open_rewards(&t->language_judge, &o.judge, &t->rewards, options, model.backend, model.device,
                            (uint64_t)o.s.seed, &e))
        die("%s", e.text);
    if (o.reward_cmd && !rewards_workers(&t->rewards, (int)o.reward_workers, o.reward_group, &e))
        usage_error("%s", e.text);
    open_code(t);
    int64_t scorable;
    if (t->rewards.count && !prompts_scorable(&t->prompts, &t->rewards, &scorable, &e)) die("--reward: %s", e.text);
    if (rewards_models(&t->rewards)) usage_error("--reward model: give the reward model as --reward-model");
}

/* Ends the program and removes unfinished files. */
static void fail_tasks(Tasks *t, const char *text) {
    writer_abort(&t->out), writer_abort(&t->curve), writer_abort(&t->page);
    die("%s", text);
}

/* Opens the files of --completions, --compute-curve and --report before anything is drawn. */
static void open_outputs(Tasks *t) {
    Error e;
    if ((o.completions && !writer_open(&t->out, o.completions, &e)) ||
        (o.compute && !writer_open(&t->curve, o.compute, &e)) || (o.report && !writer_open(&t->page, o.report, &e)))
        fail_tasks(t, e.text);
}

/* Opens the reference for samples drawn as `how` says. Estimates need samples of the model's own distribution. */
static void open_comparison(Tasks *t, Work *w, Loss *l, const Sampling *how, int new_max) {
    const int32_t context = model.model.config.context, most = t->prompts.longest + new_max;
    const int32_t longest = most < context ? most : context;
    loss_open(w, l, o.micro_tokens > longest ? (int)o.micro_tokens : longest, longest);
    w->temperature = (float)how->temperature;
    w->sampled = how->top_k == 0 && how->top_p >= 1 && how->min_p <= 0 && how->repetition_penalty == 1;
    t->work = w;
    t->loss = l;
}

/* Draws and judges the completions of `count` prompts. outcome: (count). */
static void run_tasks(Tasks *t, Rollout *engine, const Sampling *how, Outcome *outcome, int64_t count, double start) {
    Error e;
    const int64_t chunk = 4 * o.s.slots / (o.samples > 1 ? o.samples : 1) + 1;
    int64_t done = 0;
    while (done < count && !program_stopping()) {
        const int64_t n = count - done < chunk ? count - done : chunk;
        t->all.outcome = outcome + done;
        if (!evaluate_tasks(&t->all, engine, how, &t->prompts, done, n, &model.text, t->rewarded ? &t->rewards : NULL,
                            o.completions || o.compute || o.ablation || t->work || t->budget || episodes_on(&o.episodes)
                                ? take_completion
                                : NULL,
                            t, &e))
            fail_tasks(t, e.text);
        if (t->failed) fail_tasks(t, t->error.text);
        done += n;
        progress(done, count, "prompts", start);
    }
    if (done < count) fail_tasks(t, "stopped by a signal");
    t->all.outcome = outcome;
    evaluation_summarise(&t->all, outcome, count);
}

/* Reports the runs of --think-tokens, with s1's figures over them. */
static void report_thinking(const ThinkingRun *run, int n) {
    json_t *runs = json_array();
    double control = 0, best = -INFINITY;
    fputs("  | thought, at most |   mean | accuracy |\n", stderr);
    for (int i = 0; i < n; i++) {
        const bool infinite = run[i].budget == THINKING_INFINITE;
        json_t *row = json_object();
        json_object_set_new(row, "think_tokens", infinite ? json_null() : json_integer(run[i].budget));
        set_number(row, "tokens", run[i].tokens);
        set_number(row, "accuracy", run[i].accuracy);
        json_array_append_new(runs, row);
        control += run[i].control;
        best = fmax(best, run[i].accuracy);
        if (infinite) fputs("  |         no limit |", stderr);
        else fprintf(stderr, "  | %16d |", run[i].budget);
        fprintf(stderr, " %6.1f | %6.2f %% |\n", run[i].tokens, 100 * run[i].accuracy);
    }
    const double scaling = thinking_scaling(run, n);
    fprintf(stderr, "  control %.1f %%, performance %.2f %%", 100 * control / n, 100 * best);
    if (isfinite(scaling)) fprintf(stderr, ", scaling %.4f points per token", 100 * scaling);
    fputc('\n', stderr);
    json_object_set_new(result, "think_runs", runs);
    set_number(result, "control", control / n);
    set_number(result, "scaling", scaling);
    set_number(result, "performance", best);
}

/* Runs the tasks with each budget of --think-tokens. The figures of the last one are those of the program. */
static void run_budgets(Tasks *t, Rollout *engine, Thinking *thinking, Sampling *how, int n, Outcome *outcome,
                        int64_t count, double start) {
    ThinkingRun run[THINKING_BUDGETS];
    for (int i = 0; i < n; i++) {
        how->max_new = thinking[i].new_max;
        engine->turns = &thinking[i].turns;
        t->budget = thinking[i].forces ? thinking[i].budget : THINKING_INFINITE;
        t->thoughts = t->thought_tokens = t->within = 0;
        run_tasks(t, engine, how, outcome, count, start);
        if (o.compute) {
            const Cost *cost = o.samples ? &curve.sample : &curve.greedy;
            curve_parts(outcome, count);
            curve_point((ComputePoint){.method = "budget forcing",
                                       .parameter = t->budget == THINKING_INFINITE ? NAN : t->budget,
                                       .tokens = cost->rows / cost->count,
                                       .flops = curve_flops(&model.model.config, cost, 1, true),
                                       .accuracy = o.samples ? t->all.pass[0] : t->all.greedy},
                        o.samples ? t->all.pass_error[0] : t->all.greedy_error,
                        o.samples ? outcome->pass : &outcome->greedy, sizeof *outcome, count);
            curve.prompt = curve.greedy = curve.sample = (Cost){0};
        }
        run[i] = (ThinkingRun){t->budget, t->thought_tokens / t->thoughts, o.samples ? t->all.pass[0] : t->all.greedy,
                               t->within / t->thoughts};
    }
    report_thinking(run, n);
}

/* Reports --think-ablation. */
static void report_ablation(const Ablation *x) {
    const double n = x->completions, steps = x->steps;
    json_t *figures = json_object();
    if (!x->completions) fputs("  no completion has an end of thinking and an answer after it\n", stderr);
    else
        fprintf(stderr,
                "  %.0f completions with a thought and an answer, %.1f steps in each (%.0f without)\n"
                "  the thoughts raise the log-probability of the answers by %.3f, to %.3f\n"
                "  without a step it falls by %.3f, with a step of another completion by %.3f\n"
                "  %.1f %% of the steps are needed: without them more than %.0f %% of the gain is lost\n",
                n, steps / n, x->without, x->all / n, x->full / n, x->removed / steps, x->swapped / x->swaps,
                100 * x->needed / x->weighed, 100 * ABLATION_NEEDED);
    set_number(figures, "completions", n);
    set_number(figures, "without", x->without);
    set_number(figures, "steps", steps / n);
    set_number(figures, "logp", x->full / n);
    set_number(figures, "gain", x->all / n);
    set_number(figures, "removed", x->removed / steps);
    set_number(figures, "swapped", x->swapped / x->swaps);
    set_number(figures, "needed", x->needed / x->weighed);
    json_object_set_new(result, "think_ablation", figures);
}

/* ---- search ---- */

static json_t *search_json(const BeamFigures *f) {
    json_t *figures = json_object();
    set_count(figures, "n", f->n);
    set_number(figures, "accuracy", f->accuracy);
    set_number(figures, "accuracy_error", f->accuracy_error);
    set_number(figures, "majority", f->majority);
    set_number(figures, "weighted", f->weighted);
    set_number(figures, "pass", f->pass);
    set_number(figures, "results", f->results);
    set_number(figures, "finished", f->finished);
    set_number(figures, "tokens", f->tokens);
    set_number(figures, "prm_tokens", f->prm_tokens);
    set_number(figures, "flops", f->flops);
    return figures;
}

/* Runs the methods of --search on the prompts. */
static void run_search(Tasks *t, const Sampling *how, int64_t count, int new_max) {
    Error e;
    BeamSearch x;
    BeamKind kind[SEARCH_KINDS];
    const int methods = beam_methods(&o.search, kind, &e), n = (int)o.samples;
    const int64_t most = o.s.slots / n < count ? o.s.slots / n : count;
    json_t *all = json_object();
    double *right = (double *)xcalloc((size_t)count + 1, sizeof *right);
    if (!beam_new(&x, &o.search, &model.model, &model.text, &t->judge, most > 1 ? (int)most : 1, n, t->prompts.longest,
                  new_max, &e)) {
        Error why;
        error_set(&why, "%s; lower --slots", e.text);
        fail_tasks(t, why.text);
    }
    fprintf(stderr, "  search with %d solutions of a prompt\n", n);
    fputs("  | method    |      accuracy | majority | weighted |   any | results |  tokens | of the reward model |\n",
          stderr);
    for (int i = 0; i < methods; i++) {
        BeamFigures f;
        const int least = kind[i] == SEARCH_BEAM || kind[i] == SEARCH_DVTS ? (int)o.search.width : 1;
        t->search = beam_name(kind[i]);
        for (int k = o.compute ? least : n;; k = 2 * k < n ? 2 * k : n) {
            if (!beam_evaluate(&x, kind[i], k, how, &t->prompts, count, &model.text, t->all.code,
                               o.completions && k == n ? take_completion : NULL, t, right, &f, &e))
                fail_tasks(t, e.text);
            if (t->failed) fail_tasks(t, t->error.text);
            if (o.compute)
                curve_point((ComputePoint){.method = t->search,
                                           .parameter = k,
                                           .tokens = f.tokens,
                                           .prm_tokens = f.prm_tokens,
                                           .flops = f.flops,
                                           .accuracy = f.accuracy},
                            f.accuracy_error, right, sizeof *right, count);
            if (k == n) break;
        }
        fprintf(stderr, "  | %-9s |", t->search);
        cell(f.accuracy, f.accuracy_error);
        fprintf(stderr, " %8.1f | %8.1f | %5.1f | %7.1f | %7.1f | %19.1f |\n", 100 * f.majority, 100 * f.weighted,
                100 * f.pass, f.results, f.tokens, f.prm_tokens);
        json_object_set_new(all, t->search, search_json(&f));
    }
    t->search = NULL;
    json_object_set_new(result, "search", all);
    beam_free(&x);
    free(right);
}

/* Opens budget forcing for each budget. Returns their number; *new_max: maximum tokens of a completion. */
static int open_thinking(Thinking thinking[THINKING_BUDGETS], const Sampling *how, int32_t longest, int *new_max) {
    Error e;
    int32_t budget[THINKING_BUDGETS];
    const int n = thinking_on(&o.think) ? thinking_budgets(&o.think, budget, &e) : 0;
    if (!n && thinking_on(&o.think)) usage_error("%s", e.text);
    for (int i = 0; i < n; i++) {
        if (!thinking_open(&thinking[i], &o.think, budget[i], &model.text, how, model.model.config.context, longest,
                           &e))
            usage_error("%s", e.text);
        if (!i || thinking[i].new_max > *new_max) *new_max = thinking[i].new_max;
    }
    return n;
}

/* ---- options of prompts ------------------------------------------------------------------------------------------ */

/* The figures of a ranking as JSON, and on standard error. */
static json_t *report_ranking(const char *name, const RankFigures *f) {
    json_t *figures = json_object();
    set_count(figures, "prompts", f->count);
    set_count(figures, "unscorable", f->unscorable);
    fprintf(stderr, "%s: %lld prompts", name, (long long)f->count);
    if (f->unscorable) fprintf(stderr, " and %lld that cannot be ranked", (long long)f->unscorable);
    for (RankRule rule = 0; rule < RANK_RULES; rule++) {
        char error[32];
        snprintf(error, sizeof error, "%s_stderr", rank_rule_name(rule));
        set_number(figures, rank_rule_name(rule), f->accuracy[rule]);
        set_number(figures, error, f->error[rule]);
        fprintf(stderr, "%s%s %.2f %%", rule ? ", " : "\n  ", rank_rule_name(rule), 100 * f->accuracy[rule]);
    }
    fputc('\n', stderr);
    return figures;
}

/* GroupFigures of a Ranking. */
static json_t *ranking_group(const void *ranking, const Groups *g, int group, const char *title) {
    bool *which = (bool *)xcalloc((size_t)g->prompts + 1, sizeof *which);
    for (int64_t i = 0; i < g->prompts; i++) which[i] = g->of[i] == group;
    const RankFigures f = ranking_figures((const Ranking *)ranking, which);
    free(which);
    return report_ranking(title, &f);
}

/* Writes the log-probabilities of a prompt's options to the file of --completions. */
static bool write_ranked(Writer *out, const Ranking *r, int64_t i, Error *e) {
    const RankItem *x = &r->item[i];
    json_t *row = prompt_row(r->prompts, i), *logprobs = json_array();
    for (int k = 0; k < x->count; k++) json_array_append_new(logprobs, x->fits ? json_real(x->logp[k]) : json_null());
    json_object_set_new(row, "logprobs", logprobs);
    json_object_set_new(row, "choice", x->fits ? json_integer(x->choice[RANK_SUM]) : json_null());
    json_object_set_new(row, "right",
                        x->fits && x->right >= 0 ? json_boolean(x->choice[RANK_SUM] == x->right) : json_null());
    const bool ok = json_line(out, row, e);
    json_decref(row);
    return ok;
}

/* What stands between a prompt and an option: a space, as in lm-evaluation-harness, unless the chat template has a text
 * there. */
static const char *default_delimiter(void) {
    const bool text = model.text.has_template && !model.text.chat.model;
    return text && !chat_section(&model.text.chat, "assistant")->prefix.count ? " " : "";
}

/* Ranks the options of prompts instead of drawing completions. */
static void evaluate_options(const Shard *s) {
    Error e;
    Prompts p;
    Ranking r;
    Writer out;
    const double start = clock_seconds();
    read_prompts(&p, s, model.model.config.context - 1);
    const int64_t count = o.most && o.most < p.count ? o.most : p.count;
    const RankHow how = {.of = (RankOf)(o.rank - 1), .delimiter = o.delimiter ? o.delimiter : default_delimiter()};
    if (!ranking_open(&r, &p, count, &how, &model.text, &e)) die("%s", e.text);
    if (o.completions && !writer_open(&out, o.completions, &e)) die("%s", e.text);
    if (!ranking_run(&r, &model.model, (int)o.micro_tokens, &e)) {
        if (o.completions) writer_abort(&out);
        die("%s%s", e.text, program_stopping() ? "" : "; lower --micro-tokens");
    }
    for (int64_t i = 0; o.completions && i < count; i++)
        if (!write_ranked(&out, &r, i, &e)) die("%s", e.text);
    if (o.completions && !writer_commit(&out, &e)) die("%s", e.text);
    report_clusters(&p, count, ranking_group, &r);
    report_files(&p, count, ranking_group, &r);
    const RankFigures f = ranking_figures(&r, NULL);
    json_t *figures = report_ranking("all", &f);
    json_object_update(result, figures);
    json_decref(figures);
    set_count(result, "dropped", p.dropped);
    set_number(result, "seconds", clock_seconds() - start);
    ranking_close(&r);
    release_prompts(&p);
}

static void evaluate_prompts(const Shard *s) {
    Error e;
    Tasks t = {.rewarded = o.reward || o.reward_cmd || o.reward_model,
               .all = {.samples = (int)o.samples},
               .out.fd = -1,
               .curve.fd = -1,
               .page.fd = -1};
    Rollout engine;
    Episodes episodes;
    Sampling how = inference_sampling(&model, &o.s);
    how.scope = (RewardScope)o.scope;
    how.stream = RANDOM_EVAL;
    if (o.samples && how.temperature == 0)
        usage_error("--temperature 0: greedy samples are identical; give "
                    "--num-samples 0");
    if (t.rewarded && !o.samples)
        usage_error("--reward%s: with "
                    "--num-samples 0 there are no samples to choose from",
                    o.reward_model ? "-model" : "");
    if (!s->count) die("%s: the shard is empty", s->name);
    t.how = &how;
    open_tasks(&t, s);
    if (model.text.stop < 0 && !how.stops) warn("the model has no tokenizer: completions end only at --max-new-tokens");
    const int64_t count = o.most && o.most < t.prompts.count ? o.most : t.prompts.count;
    const int64_t most = o.samples > 1 ? o.samples : 1, all = count * most;
    const int32_t context = model.model.config.context;
    const int slots = (int)(all < o.s.slots ? all : o.s.slots);
    inference_few_threads(&model, slots);
    Thinking thinking[THINKING_BUDGETS];
    int new_max = o.s.max_new < context ? (int)o.s.max_new : context;
    const int budgets = open_thinking(thinking, &how, t.prompts.longest, &new_max);
    const int64_t drawable = rollout_rows(slots, t.prompts.longest) - slots;
    if (o.samples > drawable)
        usage_error("--num-samples: %lld samples per prompt, at most %lld can be sampled at once with --slots %d",
                    (long long)o.samples, (long long)drawable, slots);
    if (!rollout_new(&engine, &model.model, slots, t.prompts.longest, new_max, &e)) die("%s", e.text);
    if (episodes_on(&o.episodes)) {
        const CodeToolOptions code = {o.code.sandbox, o.code.timeout};
        if (!episodes_open(&episodes, &o.episodes, &code, &model.text, slots, "evaluate", o.s.seed, &e))
            die("%s: %s", episodes_option(&o.episodes), e.text);
        if (!episodes_check(&episodes, t.prompts.what, t.prompts.count, s->name, &e)) die("%s", e.text);
        engine.turns = &episodes.turns;
    }
    Certainty certainty = {0};
    Ablation ablation = {0};
    const int longest = t.prompts.longest + new_max < context ? t.prompts.longest + new_max : context;
    t.all.vote = (VotesWeight)o.weight;
    t.all.certainty = &certainty;
    if (o.ablation) {
        inference_need_tokenizer(&model);
        if (!ablation_open(&ablation, &model.model, &model.text, o.think.end, o.search.separator, longest, &e))
            die("%s", e.text);
        t.ablation = &ablation;
    }
    if (o.weight == VOTES_CERTAINTY && !certainty_open(&certainty, &model.model, longest, &e)) die("%s", e.text);
    Work work;
    Loss loss;
    if (o.reference) open_comparison(&t, &work, &loss, &how, new_max);
    open_outputs(&t);

    Outcome *outcome = (Outcome *)xcalloc((size_t)count, sizeof *outcome);
    const double start = clock_seconds();
    if (budgets) run_budgets(&t, &engine, thinking, &how, budgets, outcome, count, start);
    else run_tasks(&t, &engine, &how, outcome, count, start);
    const double seconds = clock_seconds() - start;
    report_json(result, &t.all, t.rewarded);
    set_count(result, "samples", o.samples);
    set_count(result, "seed", o.s.seed);
    set_count(result, "dropped", t.prompts.dropped);
    set_number(result, "temperature", o.s.temperature);
    report_tasks(&t.prompts, count, tasks_figures, &t);
    report_clusters(&t.prompts, count, tasks_figures, &t);
    report_files(&t.prompts, count, tasks_figures, &t);
    report_table("all", &t.all, t.rewarded);
    report_turns(&t.turns);
    if (t.language_judge.open) report_judge(&t.language_judge);
    t.ablation = NULL;
    if (o.ablation) report_ablation(&ablation);
    if (o.compute && !budgets) curve_samples(&t, outcome, count);
    if (o.search.methods) run_search(&t, &how, count, new_max);
    if ((o.compute && !curve_write(&t, &e)) || (o.completions && !writer_commit(&t.out, &e))) fail_tasks(&t, e.text);
    if (t.work) {
        run_batch(&work, &loss);
        report_comparison(&work);
        loss_close(&work, &loss);
    }
    fprintf(stderr, "%lld tokens in %.2f s, %.0f tok/s\n", (long long)engine.tokens, seconds,
            (double)engine.tokens / seconds);
    judge_close(&t.language_judge);
    if (o.reward_model) reward_model_close(&t.judge);
    else if (t.rewarded) rewards_close(&t.rewards);
    code_judge_close(&t.code);
    if (episodes_on(&o.episodes)) episodes_close(&episodes);
    for (int i = 0; i < budgets; i++) thinking_close(&thinking[i]);
    certainty_close(&certainty);
    ablation_close(&ablation);
    free(outcome), rollout_free(&engine);
    release_prompts(&t.prompts);
}

/* ---- audit of tests ------------------------------------------------------------------------------------------------- */

/* Programs that solve nothing. */
typedef enum { NULL_PASS, NULL_RETURN, NULL_EXIT, NULL_COUNT } NullProgram;

static const char *const null_names[NULL_COUNT] = {"pass", "return None", "exit(0)"};

/* Appends the name of the function that a test calls first, or "" if it calls none. */
static void called_name(const json_t *test, TextBuffer *name) {
    const char *text = json_string_value(json_object_get(test, "call"));
    text_clear(name);
    if (!text) text = json_string_value(json_object_get(test, "eval"));
    if (text) text_append(name, text, strspn(text, "_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"));
}

/* A program that solves nothing, for a record's tests; "return None" is one for each function that they call. */
static void null_program(const CodeRow *r, NullProgram which, TextBuffer *program) {
    TextBuffer name = {0}, line = {0};
    text_clear(program);
    if (r->c) text_string(program, "int main(void) { return 0; }");
    else if (which != NULL_RETURN) text_string(program, null_names[which]);
    for (size_t i = 0; !r->c && which == NULL_RETURN && i <= json_array_size(r->tests); i++) {
        called_name(json_array_get(r->tests, i), &name);
        if (i == json_array_size(r->tests) && r->entry) text_string(&name, r->entry);
        text_clear(&line);
        if (name.length) text_format(&line, "def %s(*args, **kwargs):\n    return None\n", name.text);
        if (line.length && !(program->length && strstr(program->text, line.text))) text_string(program, line.text);
    }
    text_free(&name), text_free(&line);
}

/* Lists the prompts whose tests a program that solves nothing passes. */
static void audit_tests(const Shard *s) {
    Error e;
    Tasks t = {0};
    read_prompts(&t.prompts, s, INT32_MAX);
    if (!prompts_run(&t.prompts, NULL)) die("%s: no prompt has the task code", s->name);
    open_code(&t);
    json_t *rows = json_array();
    int64_t count = 0;
    TextBuffer program = {0};
    const int64_t prompts = o.most && o.most < t.prompts.count ? o.most : t.prompts.count;
    for (int64_t i = 0; i < prompts && !program_stopping(); i++) {
        if (!prompts_runs(&t.prompts, NULL, i)) continue;
        json_t *passing = json_array();
        count++;
        for (int k = 0; k < NULL_COUNT; k++) {
            RewardInput in = prompts_empty(&t.prompts, i);
            CodeVerdict verdict;
            const CodeRow *r = code_judge_row(&t.code, &in, &e);
            if (!r) die("%s", e.text);
            null_program(r, (NullProgram)k, &program);
            in.completion = program.text;
            if (!program.length) continue;
            if (!code_judge_score(&t.code, &in, 1, true, &verdict, &e)) die("%s", e.text);
            if (code_reward(&verdict, CODE_REWARD_ALL, 0) == 1)
                json_array_append_new(passing, json_string(null_names[k]));
        }
        if (json_array_size(passing)) {
            json_array_append_new(rows, json_pack("{s:I,s:O}", "index", (json_int_t)i, "completions", passing));
            fprintf(stderr, "record %lld: its tests pass with '%s': %.60s\n", (long long)i,
                    json_string_value(json_array_get(passing, 0)), t.prompts.what[i].text);
        }
        json_decref(passing);
    }
    text_free(&program);
    if (program_stopping()) {
        code_judge_close(&t.code);
        die("stopped by a signal before the end of %s", s->name);
    }
    fprintf(stderr, "%zu of %lld prompts have tests that a program which solves nothing passes\n",
            json_array_size(rows), (long long)count);
    set_count(result, "prompts", count);
    json_object_set_new(result, "audit", rows);
    code_judge_close(&t.code);
    release_prompts(&t.prompts);
}

/* ---- reward models --------------------------------------------------------------------------------------------- */

static double scoring_start;

static bool scoring_progress(int64_t done, int64_t all) {
    progress(done, all, "records", scoring_start);
    return !program_stopping();
}

static void print_calibration(const Calibration *c) {
    fputs("  |   probability |   count | mean |  true |\n", stderr);
    for (int i = 0; i < CALIBRATION_BINS; i++) {
        const CalibrationBin *b = &c->sum.bin[i];
        fprintf(stderr, "  | %.2f to %.2f  | %7.0f |", calibration_edge(c, i), calibration_edge(c, i + 1), b->count);
        if (b->count > 0) fprintf(stderr, " %.2f |  %.2f |\n", b->predicted / b->count, b->right / b->count);
        else fputs("    - |     - |\n", stderr);
    }
}

static json_t *calibration_json(const Calibration *c) {
    json_t *table = json_array();
    for (int i = 0; i < CALIBRATION_BINS; i++) {
        json_t *row = json_object();
        set_number(row, "low", calibration_edge(c, i));
        set_number(row, "high", calibration_edge(c, i + 1));
        set_number(row, "count", c->sum.bin[i].count);
        set_number(row, "predicted", c->sum.bin[i].predicted / c->sum.bin[i].count);
        set_number(row, "true", c->sum.bin[i].right / c->sum.bin[i].count);
        json_array_append_new(table, row);
    }
    return table;
}

static void report_rewards(const RewardEvaluation *v, const RewardModel *r, const Shard *s, double seconds) {
    static const char *const kinds[] = {"Bradley-Terry", "outcome", "process"};
    const char *units = s->kind == RECORD_PREFERENCE ? "pairs" : s->kind == RECORD_STEP ? "steps" : "answers";
    double low = NAN, high = NAN;
    if (isfinite(v->accuracy)) wilson_interval(v->accuracy, v->units, &low, &high);
    fprintf(stderr, "%s reward model on %lld records, %.0f %s\n", kinds[r->note.kind], (long long)v->records, v->units,
            units);
    if (isfinite(v->accuracy))
        fprintf(stderr, "  accuracy %.2f %%, 95 %% interval %.2f to %.2f\n", 100 * v->accuracy, 100 * low, 100 * high);
    if (isfinite(v->auc)) fprintf(stderr, "  good scores above bad in %.2f %% (AUC)\n", 100 * v->auc);
    if (isfinite(v->solutions)) fprintf(stderr, "  solutions classified correctly %.2f %%\n", 100 * v->solutions);
    if (isfinite(v->margin)) fprintf(stderr, "  margin %.4f\n", v->margin);
    fprintf(stderr, "  score from %.4f to %.4f, mean %.4f, standard deviation %.4f\n", v->least, v->most, v->mean,
            v->deviation);
    if (isfinite(v->ece)) {
        fprintf(stderr, "  log loss %.4f, expected calibration error %.2f %%\n", v->log_loss, 100 * v->ece);
        print_calibration(&v->calibration);
    }
    fprintf(stderr, "%.2f s, %.0f records/s\n", seconds, (double)v->records / seconds);
    set_number(result, "accuracy", v->accuracy);
    set_number(result, "accuracy_low", low);
    set_number(result, "accuracy_high", high);
    set_number(result, "auc", v->auc);
    set_number(result, "solution_accuracy", v->solutions);
    set_number(result, "margin", v->margin);
    set_number(result, "min_reward", v->least);
    set_number(result, "max_reward", v->most);
    set_number(result, "mean_reward", v->mean);
    set_number(result, "reward_deviation", v->deviation);
    set_number(result, "log_loss", v->log_loss);
    set_number(result, "ece", v->ece);
    set_count(result, "records", v->records);
    set_count(result, "dropped", v->dropped);
    set_count(result, units, (int64_t)v->units);
    json_object_set_new(result, "calibration", isfinite(v->ece) ? calibration_json(&v->calibration) : json_null());
}

/* Names the model's stages of training, so that data/show --report finds the run that made it. */
static void set_lineage(const json_t *lineage) {
    char name[17];
    run_lineage_name(lineage, json_array_size(lineage), name);
    json_object_set_new(result, "lineage", json_string(name));
}

/* Scores the records of a shard and reports the figures. */
static void evaluate_scores(RewardModel *r, const Shard *s) {
    Error e;
    RewardEvaluation v;
    const int64_t count = o.most && o.most < s->count ? o.most : s->count;
    if (!s->count) die("%s: the shard is empty", s->name);
    scoring_start = clock_seconds();
    if (!evaluate_rewards(&v, r, s, count, scoring_progress, &e)) die("%s", e.text);
    if (program_stopping()) die("stopped by a signal before the end of %s", s->name);
    if (v.dropped)
        warn("%s: %lld of %lld records have no completion or no label, or exceed the context of %d; they were left out",
             s->name, (long long)v.dropped, (long long)count, r->model.config.context);
    report_rewards(&v, r, s, clock_seconds() - scoring_start);
}

/* Evaluates a reward model on a preference, unpaired or step shard. */
static void evaluate_reward_model(const Shard *s) {
    Error e;
    const Backend *backend;
    Device *device;
    RewardModel r;
    o.m.dtype = device_dtype((DeviceKind)o.m.device, o.m.dtype);
    if (!backend_open((DeviceKind)o.m.device, (Dtype)o.m.dtype, &backend, &device, &e)) die("%s", e.text);
    open_reward_model(&r, backend, device);
    const FitSide data = fit_shard(s);
    check_reward_model(&r, &data, 0);
    json_object_set_new(result, "model", json_string(r.name));
    set_lineage(r.file.lineage);
    json_t *together = result, *files = json_array();
    for (int k = 0; k < s->parts; k++) {
        begin_file(inputs.path[k]);
        evaluate_scores(&r, &s->part[k]);
        end_file(files);
    }
    if (s->parts) begin_all(together, files);
    else json_decref(files);
    evaluate_scores(&r, s);
    reward_model_close(&r);
    backend->close(device);
}

/* ---- a judge of pairs -------------------------------------------------------------------------------------------- */

/* Writes a labelled pair to the file of --completions. */
static bool write_pair(void *writer, const JudgedPair *x, Error *e) {
    json_t *row = json_object();
    json_object_set_new(row, "prompt", json_utf8(x->prompt, strlen(x->prompt)));
    json_object_set_new(row, "chosen", json_utf8(x->chosen, strlen(x->chosen)));
    json_object_set_new(row, "rejected", json_utf8(x->rejected, strlen(x->rejected)));
    set_number(row, "p", x->p);
    set_number(row, "p_first", x->first);
    set_number(row, "p_second", x->second);
    const bool ok = json_line((Writer *)writer, row, e);
    json_decref(row);
    return ok && (!program_stopping() || error_set(e, "stopped by a signal"));
}

static void report_pairs(const JudgeEvaluation *v, const Judge *j, double seconds) {
    const double log_loss = v->calibration.sum.log_loss / v->calibration.sum.count,
                 ece = calibration_error(&v->calibration);
    double low = NAN, high = NAN;
    if (v->pairs > 0) wilson_interval(v->right / v->pairs, v->pairs, &low, &high);
    fprintf(stderr, "judge on %.0f pairs", v->pairs);
    if (v->unanswered > 0) fprintf(stderr, ", and %.0f without an answer", v->unanswered);
    fprintf(
        stderr,
        "\n  accuracy %.2f %%, 95 %% interval %.2f to %.2f; one order only %.2f %%; mean probability of the label %.4f\n",
        100 * v->right / v->pairs, 100 * low, 100 * high, 100 * v->single / v->pairs, v->agreement / v->pairs);
    fprintf(stderr, "  length bias %.4f\n  log loss %.4f, expected calibration error %.2f %%\n", judge_length_bias(v),
            log_loss, 100 * ece);
    print_calibration(&v->calibration);
    report_judge(j);
    fprintf(stderr, "%.2f s, %.0f pairs/s\n", seconds, v->pairs / seconds);
    set_number(result, "accuracy", v->right / v->pairs);
    set_number(result, "accuracy_low", low);
    set_number(result, "accuracy_high", high);
    set_number(result, "single_order_accuracy", v->single / v->pairs);
    set_number(result, "agreement", v->agreement / v->pairs);
    set_number(result, "length_bias", judge_length_bias(v));
    set_number(result, "log_loss", log_loss);
    set_number(result, "ece", ece);
    set_count(result, "pairs", (int64_t)v->pairs);
    set_count(result, "unanswered", (int64_t)v->unanswered);
    json_object_set_new(result, "calibration", calibration_json(&v->calibration));
}

/* Labels the pairs of a preference shard by the judge. */
static void evaluate_judge(const Shard *s) {
    Error e;
    const Backend *backend;
    Device *device;
    Judge j;
    PairTexts texts;
    Writer out;
    JudgeEvaluation v = judge_evaluation();
    const int64_t count = o.most && o.most < s->count ? o.most : s->count;
    if (!s->count) die("%s: the shard is empty", s->name);
    o.m.dtype = device_dtype((DeviceKind)o.m.device, o.m.dtype);
    if (!backend_open((DeviceKind)o.m.device, (Dtype)o.m.dtype, &backend, &device, &e) ||
        !judge_open(&j, &o.judge, backend, device, (uint64_t)o.s.seed, &e) || !judge_use(&j, JUDGE_BY_PAIR, &e) ||
        !pair_texts_open(&texts, s, &e) || (o.completions && !writer_open(&out, o.completions, &e)))
        die("%s", e.text);
    json_object_set_new(result, "model", json_string(o.judge.file ? j.local.name : o.judge.model));
    if (o.judge.file) set_lineage(j.local.file.lineage);
    const double start = clock_seconds();
    const bool ok =
        judge_evaluate(&v, &j, &texts, s, count, o.completions ? write_pair : NULL, o.completions ? &out : NULL, &e);
    if (!ok && o.completions) writer_abort(&out);
    if (!ok || (o.completions && !writer_commit(&out, &e))) die("%s", e.text);
    if (texts.unwrapped)
        warn("%s: %lld of %lld prompts are no single message of a user; they are read with their special tokens",
             s->name, (long long)texts.unwrapped, (long long)count);
    report_pairs(&v, &j, clock_seconds() - start);
    pair_texts_close(&texts);
    judge_close(&j);
    backend->close(device);
}

/* ---- the program ----------------------------------------------------------------------------------------------- */

static void check_usage(void) {
    Error e;
    if (!inputs_open(&inputs, "-i/--input", &o.inputs, &e) || !inputs_whole(&inputs, "-i/--input", false, &e))
        usage_error("%s", e.text);
    const char *const files[] = {o.m.checkpoint, inputs.count ? inputs.path[0] : NULL, o.reward_model};
    int pipes = 0;
    for (int i = 0; i < 3; i++) pipes += files[i] && !strcmp(files[i], "-");
    if (!o.m.checkpoint && !o.reward_model && !o.audit && !judge_given(&o.judge))
        usage_error("-c/--checkpoint is required (or --reward-model, --judge, or --audit-tests)");
    if (o.audit && (o.m.checkpoint || o.reward_model))
        usage_error("--audit-tests: needs no model; leave -c and --reward-model out");
    if (!inputs.count) usage_error("-i/--input is required");
    for (int i = 0; inputs.count > 1 && i < inputs.count; i++)
        if (!strcmp(inputs.path[i], "-")) usage_error("-i/--input: standard input cannot be one of several files");
    if (inputs.count > 1 && o.reference) usage_error("--reference: compares two models on one file; give -i once");
    if (pipes > 1) usage_error("-c, -i, --reward-model: only one of them can be standard input");
    const struct {
        const char *option, *path;
    } out[] = {
        {"completions", o.completions}, {"tokens", o.tokens}, {"compute-curve", o.compute}, {"report", o.report}};
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        if (out[i].path && !strcmp(out[i].path, "-"))
            usage_error("--%s: must be a file, because standard output receives the result", out[i].option);
    if (o.reference && !strcmp(o.reference, "-")) usage_error("--reference: must be a file, not standard input");
    if (o.reward_model && (o.reward || o.reward_cmd)) usage_error("--reward-model and --reward: give only one of them");
}

/* Rejects options of --search that have no effect, and what it cannot do; sets its defaults. */
static void refuse_unused_search(void) {
    Error e;
    BeamKind kind[SEARCH_KINDS];
    bool uses[SEARCH_KINDS] = {false};
    const int methods = o.search.methods ? beam_methods(&o.search, kind, &e) : 0;
    if (o.search.methods && !methods) usage_error("%s", e.text);
    for (int i = 0; i < methods; i++) uses[kind[i]] = true;
    const bool steps = uses[SEARCH_BEAM] || uses[SEARCH_DVTS] || uses[SEARCH_REBASE];
    const OptionUse use[] = {
        {&o.search.width, uses[SEARCH_BEAM] || uses[SEARCH_DVTS], "used only by beam and dvts"},
        {&o.search.iterations, steps, "used only by beam, dvts and rebase"},
        {&o.search.lookahead, steps, "used only by beam, dvts and rebase"},
        {&o.search.separator, methods > 0 || o.ablation, "used only with --search and --think-ablation"},
        {&o.search.filter, uses[SEARCH_BEAM] || uses[SEARCH_REBASE], "used only by beam and rebase"},
        {&o.search.sort, uses[SEARCH_BEAM], "used only by beam"},
        {&o.search.balance, uses[SEARCH_REBASE], "used only by rebase"}};
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    if (o.ablation && (methods || thinking_on(&o.think) || episodes_on(&o.episodes)))
        usage_error("--think-ablation: cannot be used with --search, --think-tokens, --tools or --tool-cmd");
    if (o.ablation && !o.search.separator) o.search.separator = "\n";
    if (o.ablation && (!*o.search.separator || !*o.think.end))
        usage_error("--think-ablation: --think-end and --step-separator must not be empty");
    if (!methods) return;
    if (!o.reward_model) usage_error("--search: needs a process reward model, --reward-model");
    if (!option_given(&o.samples)) o.samples = 4;
    if (!option_given(&o.s.temperature)) o.s.temperature = 0.8;
    if (!option_given(&o.aggregation)) o.aggregation = PRM_LAST;
    if (o.samples < 1) usage_error("--search: needs --num-samples, the number of solutions");
    if ((uses[SEARCH_BEAM] || uses[SEARCH_DVTS]) && o.samples % o.search.width)
        usage_error("--num-samples %lld: beam and dvts need a multiple of --beam-width %lld", (long long)o.samples,
                    (long long)o.search.width);
    if (o.s.repetition_penalty != 1) usage_error("--search: cannot be used with --repetition-penalty");
    if (thinking_on(&o.think) || episodes_on(&o.episodes))
        usage_error("--search: cannot be used with --think-tokens, --tools or --tool-cmd");
    if (o.reference) usage_error("--search: cannot be used with --reference");
}

/* Rejects options that a kind of data does not use: chat, prompts, or what only a reward model scores; none: tokens. */
static void refuse_unused(bool chat, bool prompts, bool scored) {
    static const char only_loss[] = "used only for chat and token shards";
    static const char only_model[] = "used only with -c/--checkpoint";
    const char *only_prompts = o.audit             ? "not used with --audit-tests, which needs no model"
                               : prompts && o.rank ? "not used with --rank-options, which draws nothing"
                                                   : "used only for a prompt shard";
    const bool loss = !prompts && !scored, runs = !scored && !o.audit, draws = prompts && runs && !o.rank,
               drawn = draws && o.samples;
    const OptionUse use[] = {
        {&o.m.tokenizer, runs, only_model},
        {&o.m.chat_template, runs, only_model},
        {&o.m.adapter, runs, only_model},
        {&o.m.quantize, runs, only_model},
        {&o.m.device, !o.audit, only_prompts},
        {&o.m.dtype, !o.audit, only_prompts},
        {&o.completion_only, chat, "used only for a chat shard"},
        {&o.max_length, loss, only_loss},
        {&o.micro_tokens, loss || o.reward_model || o.reference || o.rank,
         "used only for a loss, a reward model, --rank-options and --reference"},
        {&o.reference, !scored && (!prompts || drawn), "used only for a loss, or for samples of a prompt shard"},
        {&o.rank, prompts && runs, o.audit ? only_prompts : "used only for a prompt shard"},
        {&o.delimiter, o.rank != 0, "used only with --rank-options"},
        {&o.reward_model, !prompts || draws, only_prompts},
        {&o.tokens, o.reference != NULL, "used only with --reference"},
        {&o.s.max_new, draws, only_prompts},
        {&o.s.stop, draws, only_prompts},
        {&o.s.slots, draws, only_prompts},
        {&o.s.repetition_penalty, draws, only_prompts},
        {&o.samples, draws, only_prompts},
        {&o.episodes.tools, draws, only_prompts},
        {&o.episodes.commands, draws, only_prompts},
        {&o.think.tokens, draws, only_prompts},
        {&o.ablation, draws, only_prompts},
        {&o.search.methods, draws, only_prompts},
        {&o.weight, drawn && (o.weight != VOTES_REWARD || o.reward_model),
         "used only for the samples of a prompt shard; reward needs --reward-model"},
        {&o.reward, draws, only_prompts},
        {&o.reward_cmd, draws, only_prompts},
        {&o.reward_timeout, o.reward_cmd != NULL, "used only with --reward-cmd"},
        {&o.reward_workers, o.reward_cmd != NULL, "used only with --reward-cmd"},
        {&o.reward_group, o.reward_cmd != NULL, "used only with --reward-cmd"},
        {&o.scope, episodes_on(&o.episodes), "used only with --tools or --tool-cmd"},
        {&o.aggregation, o.reward_model != NULL, "used only with --reward-model"},
        {&o.compute, draws, only_prompts},
        {&o.report, o.compute != NULL, "used only with --compute-curve"},
        {&o.completions, (prompts && runs) || (scored && judge_given(&o.judge)),
         "used only for a prompt shard, and for pairs with --judge"},
        CODE_USES(o.code, draws || o.audit, false, only_prompts),
        {&o.s.temperature, drawn, "used only for the samples of a prompt shard, --num-samples above 0"},
    };
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    episodes_refuse_unused(&o.episodes, options);
    thinking_refuse_unused(&o.think, options, o.ablation);
    refuse_unused_search();
    if (thinking_on(&o.think) && episodes_on(&o.episodes))
        usage_error("--think-tokens and --tools, --tool-cmd: give only one of them");
    if (thinking_on(&o.think) && o.reference) usage_error("--think-tokens: cannot be used with --reference");
    sampling_refuse_unused(&o.s, options, drawn, "used only for the samples of a prompt shard, --num-samples above 0");
}

/* Checks the options against the kind of the data. scored: data that only a reward model can score. */
static void check_kind(const Shard *s, const char *kind, bool scored) {
    const bool pairs = scored && judge_given(&o.judge);
    if (pairs && s->kind != RECORD_PREFERENCE)
        usage_error("--judge: labels the pairs of a preference shard, not of kind %s", kind);
    if (pairs && o.reward_model)
        usage_error("--judge and --reward-model: give only one of them for a preference shard");
    if (pairs && inputs.count > 1) usage_error("--judge: labels one preference shard; give -i once");
    if (scored && !o.reward_model && !pairs)
        die("%s: a shard of kind %s, expected chat or prompt; a reward model (--reward-model) can score it", s->name,
            kind);
    if (scored && o.m.checkpoint)
        usage_error("-c/--checkpoint: a shard of kind %s is scored by --reward-model only; leave -c out", kind);
    if (o.audit && s->kind != RECORD_PROMPT) usage_error("--audit-tests: reads a prompt shard, not %s", kind);
    if (!scored && !o.m.checkpoint && !o.audit) usage_error("-c/--checkpoint is required for a shard of kind %s", kind);
    if (scored || s->kind != RECORD_PROMPT || o.audit || o.rank)
        judge_refuse_unused(&o.judge, options, pairs ? JUDGE_OF_PAIRS : 0,
                            "used only for a preference shard, and for prompts with --reward judge=...");
    refuse_unused(!scored && s->kind == RECORD_CHAT, !scored && s->kind == RECORD_PROMPT, scored);
    if (o.reward_model && !scored && s->kind != RECORD_PROMPT)
        usage_error("--reward-model: scores preference, unpaired, step and prompt shards, not %s", kind);
}

/* Opens one of the files, which must be a shard. */
static void open_file(DataFile *f, const char *path) {
    Error e;
    char kinds[FILE_KIND_TEXT];
    if (!data_file_open(f, path, &e)) die("%s", e.text);
    if (!data_file_is_shard(f))
        die("%s: this is %s, expected a record shard (data/make_shard) or a token shard", f->name,
            file_kind_any(f->bytes, f->n < FILE_KIND_BYTES ? f->n : FILE_KIND_BYTES, kinds));
}

/* Checks that several files are all record shards or all token shards. Opens the former as one shard, in which each has
 * at most --max-prompts records. */
static void open_files(Shard *s, bool records) {
    Error e;
    for (int k = 1; k < inputs.count; k++) {
        DataFile f;
        open_file(&f, inputs.path[k]);
        if ((f.magic == MAGIC_RECORDS) != records)
            die("%s and %s: one is a token shard, the other is not; evaluate them one by one", inputs.path[0], f.name);
        data_file_close(&f);
    }
    if (!records) return;
    if (!shard_open_all(s, (const char *const *)inputs.path, inputs.count, false, &e)) die("%s", e.text);
    for (int k = 0; k < s->parts; k++)
        if (o.most && o.most < s->part[k].count) s->part[k].count = o.most;
    if (s->parts) shard_add_up(s);
    if (s->parts) o.most = 0;
}

int main(int argc, char **argv) {
    Error e;
    o.m.dtype = DTYPE_AUTO;
    o.s = sampling_options(1, 256);
    o.episodes = episode_defaults();
    o.think = thinking_defaults();
    o.search = beam_defaults();
    o.samples = 8;
    o.micro_tokens = 4096;
    o.completion_only = true;
    o.reward_timeout = 60;
    o.reward_workers = 1;
    o.code = code_defaults();
    o.judge = judge_defaults();
    options_parse_all(options, &about, argc, argv);
    check_usage();
    program_start();

    DataFile file;
    Shard shard = {0};
    Loss loss = {0};
    open_file(&file, inputs.path[0]);
    const bool records = file.magic == MAGIC_RECORDS, several = inputs.count > 1;
    if (several) open_files(&shard, records);
    else if (records && !shard_read(&shard, &file.in, &e)) die("%s", e.text);
    const char *kind = records ? record_kind_name(shard.kind) : "tokens";
    const bool scored = records && shard.kind != RECORD_CHAT && shard.kind != RECORD_PROMPT;
    check_kind(&shard, kind, scored);
    if (!scored && !o.audit) inference_open(&model, &o.m, o.s.seed, records ? &shard : NULL);
    result = json_object();
    if (!scored && !o.audit) json_object_set_new(result, "model", json_string(model.name));
    if (!scored && !o.audit) set_lineage(model.file.lineage);
    json_object_set_new(result, "data",
                        several ? json_sprintf("%s and %d more", file.name, inputs.count - 1) : json_string(file.name));
    json_object_set_new(result, "kind", json_string(kind));
    if (scored && judge_given(&o.judge)) evaluate_judge(&shard);
    else if (scored) evaluate_reward_model(&shard);
    else if (o.audit) audit_tests(&shard);
    else if (shard.kind == RECORD_PROMPT && o.rank) evaluate_options(&shard);
    else if (shard.kind == RECORD_PROMPT) evaluate_prompts(&shard);
    else if (several) evaluate_losses(records ? &shard : NULL);
    else evaluate_loss(file.name, &file, records ? &shard : NULL, &loss);

    char *text = json_dump_short(result, JSON_SORT_KEYS | JSON_COMPACT);
    if (puts(text) < 0 || fflush(stdout)) die("standard output: cannot write: %s", strerror(errno));
    free(text);
    json_decref(result);
    if (records) shard_close(&shard);
    data_file_close(&file);
    inputs_close(&inputs);
    if (!scored && !o.audit) inference_close(&model);
    return 0;
}
