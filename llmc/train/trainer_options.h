/* trainer_options.h - options of every trainer: the model, its optimizer, the ranks and the output.
 *
 *     static struct { TrainerOptions t; const char *input; } o;
 *     static const Option options[] = {
 *         OPTION_GROUP("Data"),
 *         OPTION_TEXT("input",     'i', &o.input,   "FILE", "shard to train on"),
 *         OPTION_INT ("max-steps", 'x', &o.t.steps, 0, 1e9, "number of optimizer steps"),
 *         TRAINER_MODEL_OPTIONS(o.t),
 *         TRAINER_LORA_OPTIONS(o.t),
 *         TRAINER_OPTIMIZER_OPTIONS(o.t),
 *         TRAINER_OUTPUT_OPTIONS(o.t),
 *         OPTION_END};
 *     o.t = trainer_defaults(2e-5);                               // before options_parse()
 *
 * Each trainer lists --max-steps, whose value is the field `steps`, in its own group of data options.
 */
#ifndef LLMC_TRAIN_TRAINER_OPTIONS_H
#define LLMC_TRAIN_TRAINER_OPTIONS_H

#include "../base/options.h"     /* OPTION_INT, OPTION_REAL, OPTION_TEXT, OPTION_GROUP, ... */
#include "../device.h"           /* DEVICE_OPTIONS, DTYPE_AUTO */
#include "../model/config.h"     /* gpt2_config_named */
#include "../model/model_load.h" /* keep: QUANTIZE_CHOICES */
#include "../model/schedule.h"   /* DECAY_CHOICES, SCHEDULE_CHOICES, SCHEDULE_CONSTANT, SCHEDULE_LINEAR, ... */
#include "best_model.h"          /* BEST_OPTIONS, BestOptions */

typedef struct TrainerOptions {
    const char *checkpoint, *output, *state, *resume, *metrics, *tensorboard, *report;
    int64_t layers, heads, width, vocab, context;
    int64_t seed, recompute, micro_tokens, steps, save_steps, logging_steps, max_bad_steps;
    int device, dtype, output_dtype, schedule, decay_kind;
    double learning_rate, weight_decay, beta1, beta2, eps, max_grad_norm, warmup, min_lr_rate, decay;
    int64_t zero;
    double dist_timeout;
    int64_t lora_rank;
    double lora_alpha;
    const char *lora_targets, *adapter, *adapter_output;
    const char *output_dir;
    BestOptions best;
    int64_t max_eval_samples;
    int64_t save_total_limit;
    bool overwrite_output_dir;
    bool use_rslora, use_dora, quiet;
    int quantize;          /* a Quantize */
    bool takes_scorers;    /* the model may be a reward model or a critic */
    bool teaches_template; /* the output takes the data's chat template, also if the model has another one */
    double default_rate;   /* learning_rate before the command line, for full training */
} TrainerOptions;

/* The defaults of all trainers; each has its own learning rate. */
static inline TrainerOptions trainer_defaults(double learning_rate) {
    TrainerOptions o = {.dtype = DTYPE_AUTO, .seed = 42, .micro_tokens = 4096, .logging_steps = 1, .max_bad_steps = 10};
    o.default_rate = learning_rate;
    o.learning_rate = nextafter(learning_rate, 1); /* no command line gives this number: it marks the default */
    o.lora_alpha = 32;
    o.lora_targets = "all-linear";
    o.beta1 = 0.9;
    o.beta2 = 0.999;
    o.eps = 1e-8;
    o.max_grad_norm = 1;
    o.schedule = SCHEDULE_LINEAR;
    o.decay = 0.1;
    o.dist_timeout = 600;
    return o;
}

/* The learning rate's default is that of full training, or ten times as much for adapters (Schulman et al. 2025, "LoRA
 * Without Regret"; TRL's peft_integration.md has the same rule). Call it after options_parse(). */
static inline void trainer_default_rate(TrainerOptions *o) {
    if (o->learning_rate == nextafter(o->default_rate, 1))
        o->learning_rate = o->default_rate * (o->lora_rank || o->adapter ? 10 : 1);
}

// clang-format off
#define TRAINER_MODEL_OPTIONS(o)                                                                                       \
    OPTION_GROUP("Model"),                                                                                             \
    OPTION_TEXT("checkpoint", 'c', &(o).checkpoint, "FILE",                                                            \
                "start from: a model's folder or file, - (stdin) or d12 (random)"),                                    \
    OPTION_INT ("layers",     0,   &(o).layers,     1, 1024, "start from a new model with this many layers"),          \
    OPTION_INT ("heads",      0,   &(o).heads,      1, 1024,                                                           \
                "attention heads of a new model (default: one per 64 channels)"),                                      \
    OPTION_INT ("width",      0,   &(o).width,      1, 65536, "channels of a new model (default: 64 per layer)"),      \
    OPTION_INT ("vocab",      0,   &(o).vocab,      1, 4194176, "vocabulary of a new model (default: the data's)"),    \
    OPTION_INT ("context",    0,   &(o).context,    1, 1048576, "maximum positions of a new model (default: 1024)"),   \
    DEVICE_OPTIONS(o),                                                                                                 \
    OPTION_INT("recompute",    0, &(o).recompute,    0, 2,                                                             \
               "activations to recompute to save memory: 0 none (with --dtype bf16 on a CPU as 1), 1 layernorm and "   \
               "GELU, 2 whole layers"),                                                                                \
    OPTION_INT("micro-tokens", 0, &(o).micro_tokens, 16, 1 << 24,                                                      \
               "token budget of a micro-batch; affects memory, and results only by rounding"),                         \
    OPTION_INT("seed",         0, &(o).seed,         0, 9007199254740992.0, "random seed")

#define TRAINER_LORA_OPTIONS(o)                                                                                        \
    OPTION_GROUP("Low-rank adapters"),                                                                                 \
    OPTION_INT ("lora-rank",    0, &(o).lora_rank,    0, 1024,                                                         \
                "train adapters of this rank and not the weights, at ten times the default rate; 0: no adapters"),     \
    OPTION_REAL("lora-alpha",   0, &(o).lora_alpha,   0, 1e6, "adapters are scaled by alpha / rank"),                  \
    OPTION_TEXT("lora-targets", 0, &(o).lora_targets, "LIST",                                                          \
                "projections with an adapter: all-linear, or names such as q_proj,v_proj"),                            \
    OPTION_FLAG("use-rslora",   0, &(o).use_rslora,   "scale adapters by alpha / sqrt(rank) (rsLoRA)"),                \
    OPTION_FLAG("use-dora",     0, &(o).use_dora,     "train the lengths of the rows of adapted weights, too (DoRA)"), \
    OPTION_CHOICE("quantize",   0, &(o).quantize,     QUANTIZE_CHOICES,                                                \
                  "hold matrices in blocks of 8 bits, or linear layers in 4; keep: as a folder or GGUF has them"),     \
    OPTION_TEXT("adapter",      0, &(o).adapter,      "DIR",                                                           \
                "continue from the adapters in this folder (peft's format); it sets rank, scale and targets"),         \
    OPTION_TEXT("adapter-output", 0, &(o).adapter_output, "DIR",                                                       \
                "write the adapters alone to this folder (peft's format); -o writes the merged model")

#define TRAINER_OPTIMIZER_OPTIONS(o)                                                                                   \
    OPTION_GROUP("Optimizer"),                                                                                         \
    OPTION_REAL  ("learning-rate",     'l', &(o).learning_rate, 0, 10, "peak learning rate of AdamW"),                 \
    OPTION_CHOICE("lr-scheduler-type", 0,   &(o).schedule,      SCHEDULE_CHOICES, "learning-rate schedule"),           \
    OPTION_REAL  ("warmup-steps",      0,   &(o).warmup,        0, 1e9,                                                \
                  "length of the linear warm-up; below 1, a fraction of all steps"),                                   \
    OPTION_REAL  ("min-lr-rate",       0,   &(o).min_lr_rate,   0, 1,                                                  \
                  "final learning rate, as a fraction of the peak"),                                                   \
    OPTION_REAL  ("decay-steps",       0,   &(o).decay,         0, 1e9,                                                \
                  "wsd: length of the decay; below 1, a fraction of all steps"),                                       \
    OPTION_CHOICE("decay-type",        0,   &(o).decay_kind,    DECAY_CHOICES, "wsd: shape of the decay"),             \
    OPTION_REAL  ("weight-decay",      0,   &(o).weight_decay,  0, 10, "decoupled weight decay, on matrices only"),    \
    OPTION_REAL  ("adam-beta1",        0,   &(o).beta1,         0, 0.999999, "decay rate of the first moment"),        \
    OPTION_REAL  ("adam-beta2",        0,   &(o).beta2,         0, 0.9999999, "decay rate of the second moment"),      \
    OPTION_REAL  ("adam-epsilon",      0,   &(o).eps,           1e-20, 1,                                              \
                  "term added to the square root of the second moment"),                                               \
    OPTION_REAL  ("max-grad-norm",     0,   &(o).max_grad_norm, 0, 1e9,                                                \
                  "clip the global gradient norm to this; 0 disables"),                                                \
    OPTION_INT   ("max-bad-steps",     0,   &(o).max_bad_steps, 0, 1e9,                                                \
                  "stop once more than this many steps were skipped for NaN or infinity"),                             \
    OPTION_GROUP("Ranks"),                                                                                             \
    OPTION_INT ("zero",         0, &(o).zero,         0, 2,                                                            \
                "distribute over the ranks: 1 the optimizer's state, 2 also the gradients"),                           \
    OPTION_REAL("dist-timeout", 0, &(o).dist_timeout, 0.1, 1e6, "seconds that a rank may keep the others waiting")

#define TRAINER_OUTPUT_OPTIONS(o)                                                                                      \
    OPTION_GROUP("Output"),                                                                                            \
    OPTION_TEXT  ("output",        'o', &(o).output,        "FILE",                                                    \
                  "trained model: DIR/, .safetensors, .gguf or .bin, or - (stdout); .zst compresses"),                 \
    OPTION_CHOICE("output-dtype",  0,   &(o).output_dtype,  "float32|bf16|f16|q8_0",                                   \
                  "number format of the output: q8_0 in .gguf only, not f16 in .bin; a folder keeps its own"),         \
    OPTION_TEXT  ("output-dir",    0,   &(o).output_dir,    "DIR",                                                     \
                  "folder for the model, metrics, report and states; other output options override their files"),      \
    OPTION_FLAG  ("overwrite-output-dir", 0, &(o).overwrite_output_dir,                                                \
                  "replace the files of another run in --output-dir"),                                                 \
    OPTION_TEXT  ("state",         0,   &(o).state,         "FILE",                                                    \
                  "training state to write; OUTPUT.state or DIR/checkpoint-STEP if not given"),                        \
    OPTION_INT   ("save-steps",    0,   &(o).save_steps,    0, 1e9,                                                    \
                  "write the state every N steps; 0 writes it only on a signal"),                                      \
    OPTION_INT   ("save-total-limit", 0, &(o).save_total_limit, 1, 1e9,                                                \
                  "keep the newest N states in --output-dir, and that of the best model (default: all)"),              \
    OPTION_TEXT  ("resume",        0,   &(o).resume,        "[FILE]",                                                  \
                  "continue bit for bit from a state, if not given that of the output; repeat the other options"),     \
    OPTION_TEXT  ("metrics",       0,   &(o).metrics,       "FILE", "write one JSON line per step"),                   \
    OPTION_TEXT  ("tensorboard",   0,   &(o).tensorboard,   "DIR", "write TensorBoard event files"),                   \
    OPTION_TEXT  ("report",        0,   &(o).report,        "FILE", "write a self-contained HTML report"),             \
    OPTION_INT   ("logging-steps", 0,   &(o).logging_steps, 1, 1e9, "print a line every N steps"),                     \
    OPTION_FLAG  ("quiet",         'q', &(o).quiet,                                                                    \
                  "print only errors, warnings and the last step")
// clang-format on

/* Options of every trainer's group "Evaluation". */
// clang-format off
#define TRAINER_EVALUATION_OPTIONS(o)                                                                                  \
    OPTION_INT("max-eval-samples", 0, &(o).max_eval_samples, 1, 1e9,                                                   \
               "evaluate on the first N records of each held-out set only (default: all)"),                            \
    BEST_OPTIONS((o).best)
// clang-format on

/* Whether there is validation data. */
static inline bool trainer_validates(const Option *table) {
    const int val = option_find(table, "val");
    return val >= 0 && ((const OptionList *)table[val].value)->count > 0;
}

/* Rejects options of all trainers that have no effect together with the others. epochs: the variable of
 * --num-train-epochs. */
static inline void trainer_refuse_unused(const TrainerOptions *o, const Option *table, const double *epochs) {
    const bool adapters = o->lora_rank > 0, wsd = o->schedule == SCHEDULE_WSD;
    const bool val = trainer_validates(table), patience = o->best.patience > 0, best = o->best.file || patience;
    const bool shaped = o->layers || (o->checkpoint && gpt2_config_named(o->checkpoint));
    const OptionUse use[] = {
        {&o->heads, o->layers, "used only with --layers"},
        {&o->width, o->layers, "used only with --layers"},
        {&o->vocab, shaped, "used only for a new model, with --layers or -c d12"},
        {&o->context, shaped, "used only for a new model, with --layers or -c d12"},
        {&o->lora_alpha, adapters, "used only with --lora-rank"},
        {&o->lora_targets, adapters, "used only with --lora-rank"},
        {&o->use_rslora, adapters, "used only with --lora-rank"},
        {&o->use_dora, adapters, "used only with --lora-rank"},
        {&o->min_lr_rate, o->schedule != SCHEDULE_CONSTANT, "not used by --lr-scheduler-type constant"},
        {&o->decay, wsd, "used only with --lr-scheduler-type wsd"},
        {&o->decay_kind, wsd, "used only with --lr-scheduler-type wsd"},
        {&o->output_dtype, o->output != NULL, "used only with --output"},
        {&o->save_total_limit, o->output_dir && !o->state && o->save_steps,
         "used only with --output-dir and --save-steps"},
        {&o->overwrite_output_dir, o->output_dir != NULL, "used only with --output-dir"},
        {&o->max_eval_samples, val, "used only with --val"},
        {&o->best.file, val, "used only with --val"},
        {&o->best.patience, val, "used only with --val"},
        {&o->best.metric, val && best, "used only with --val and --best, --output-dir or --early-stopping-patience"},
        {&o->best.greater, val && best, "used only with --val and --best, --output-dir or --early-stopping-patience"},
        {&o->best.threshold, patience, "used only with --early-stopping-patience"},
        {epochs, !o->steps, "--max-steps sets the length of the run; give only one of them"},
    };
    options_refuse_unused(table, use, sizeof use / sizeof *use);
}

#endif
