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
#include "llmc/base/error.h"              /* die, Error */
#include "llmc/base/file_kind.h"          /* FILE_KIND_BYTES, MAGIC_RECORDS, FILE_KIND_TEXT, file_kind_any */
#include "llmc/base/json_text.h"          /* json_dump_short */
#include "llmc/base/options.h"            /* OPTION_TEXT, OPTION_GROUP, OPTION_FLAG, OPTION_INT, ... */
#include "llmc/base/program.h"            /* program_start */
#include "llmc/evaluate/evaluator.h"      /* Evaluator, EvaluateOptions, evaluate_defaults, evaluator_lineage */
#include "llmc/evaluate/judged_pairs.h"   /* evaluate_judge */
#include "llmc/evaluate/loss_sums.h"      /* LossSums */
#include "llmc/evaluate/option_ranking.h" /* evaluate_options */
#include "llmc/evaluate/prompt_figures.h" /* evaluate_prompts */
#include "llmc/evaluate/reward_figures.h" /* evaluate_reward_model */
#include "llmc/evaluate/test_audit.h"     /* evaluate_tests */
#include "llmc/evaluate/text_loss.h"      /* evaluate_loss, evaluate_losses */
#include "llmc/evaluate/usage.h"          /* check_kind, check_usage */
#include "llmc/judge/judge_options.h"     /* JUDGE_OPTIONS, judge_given */
#include "llmc/records/inputs.h"          /* inputs_close */
#include "llmc/records/shard.h"           /* Shard, RECORD_PROMPT, RECORD_CHAT, record_kind_name, ... */
#include "llmc/reward/code_judge.h"       /* CODE_OPTIONS */
#include "llmc/reward/reward_model.h"     /* PRM_AGGREGATION_CHOICES */
#include "llmc/rollout/beam_search.h"     /* SEARCH_OPTIONS */
#include "llmc/rollout/episodes.h"        /* EPISODE_OPTIONS */
#include "llmc/rollout/inference.h"       /* DataFile, data_file_close, INFERENCE_MODEL_OPTIONS, ... */
#include "llmc/rollout/ranking.h"         /* RANK_OF_CHOICES */
#include "llmc/rollout/thinking.h"        /* THINKING_OPTIONS */
#include "llmc/rollout/votes.h"           /* VOTES_WEIGHTS */

static EvaluateOptions o;

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
    OPTION_FLAG("reward-sandbox",       0, &o.reward_sandbox,
                "run reward programs in the sandbox: they read this folder, write to /tmp alone, and have no network"),
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
    OPTION_TEXT("report",               0, &o.report,         "PAGE",
                "write an HTML page: with --compute-curve its charts, with --reference the texts, token by token"),
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
static void open_files(Evaluator *ev, Shard *s, bool records) {
    Error e;
    for (int k = 1; k < ev->inputs.count; k++) {
        DataFile f;
        open_file(&f, ev->inputs.path[k]);
        if ((f.magic == MAGIC_RECORDS) != records)
            die("%s and %s: one is a token shard, the other is not; evaluate them one by one", ev->inputs.path[0],
                f.name);
        data_file_close(&f);
    }
    if (!records) return;
    if (!shard_open_all(s, (const char *const *)ev->inputs.path, ev->inputs.count, false, &e)) die("%s", e.text);
    for (int k = 0; k < s->parts; k++)
        if (o.most && o.most < s->part[k].count) s->part[k].count = o.most;
    if (s->parts) shard_add_up(s);
    if (s->parts) o.most = 0;
}

/* Evaluates what is in the files. s: their records; NULL for token shards. */
static void evaluate_files(Evaluator *ev, DataFile *file, const Shard *s, bool scored) {
    LossSums loss = {0};
    const bool prompts = s && s->kind == RECORD_PROMPT;
    if (scored && judge_given(&o.judge)) evaluate_judge(ev, s);
    else if (scored) evaluate_reward_model(ev, s);
    else if (o.audit) evaluate_tests(ev, s);
    else if (prompts && o.rank) evaluate_options(ev, s);
    else if (prompts) evaluate_prompts(ev, s);
    else if (ev->inputs.count > 1) evaluate_losses(ev, s);
    else evaluate_loss(ev, file->name, file, s, &loss);
}

int main(int argc, char **argv) {
    Error e;
    Evaluator ev = {.o = &o, .options = options};
    o = evaluate_defaults();
    options_parse_all(options, &about, argc, argv);
    check_usage(&ev);
    program_start();

    DataFile file;
    Shard shard = {0};
    open_file(&file, ev.inputs.path[0]);
    const bool records = file.magic == MAGIC_RECORDS, several = ev.inputs.count > 1;
    if (several) open_files(&ev, &shard, records);
    else if (records && !shard_read(&shard, &file.in, &e)) die("%s", e.text);
    const char *kind = records ? record_kind_name(shard.kind) : "tokens";
    const bool scored = records && shard.kind != RECORD_CHAT && shard.kind != RECORD_PROMPT;
    const bool runs = !scored && !o.audit; /* the model of -c */
    check_kind(&ev, &shard, kind, scored);
    if (runs) inference_open(&ev.model, &o.m, o.s.seed, records ? &shard : NULL);
    ev.result = json_object();
    if (runs) json_object_set_new(ev.result, "model", json_string(ev.model.name));
    if (runs) evaluator_lineage(&ev, ev.model.file.lineage);
    json_object_set_new(ev.result, "data",
                        several ? json_sprintf("%s and %d more", file.name, ev.inputs.count - 1)
                                : json_string(file.name));
    json_object_set_new(ev.result, "kind", json_string(kind));
    evaluate_files(&ev, &file, records ? &shard : NULL, scored);

    char *text = json_dump_short(ev.result, JSON_SORT_KEYS | JSON_COMPACT);
    if (puts(text) < 0 || fflush(stdout)) die("standard output: cannot write: %s", strerror(errno));
    free(text);
    json_decref(ev.result);
    if (records) shard_close(&shard);
    data_file_close(&file);
    inputs_close(&ev.inputs);
    if (runs) inference_close(&ev.model);
    return 0;
}
