/* trainer.h - shared trainer scaffolding: the model and its optimizer, logging, training state.
 *
 * A trainer's own file contains its training loop. This header contains the parts that the loops share, here in the
 * order of use:
 *
 *     trainer_open()         opens the device, the model (from -c, or from --resume), the optimizer and the metrics
 *     trainer_announce()     prints the configuration and the predicted memory, before anything large is allocated
 *     trainer_schedule()     sets the length of the run
 *     trainer_begin_step()   starts the clock of a step
 *     trainer_update()       one optimizer step: schedule, clipping, check for NaN
 *     trainer_pause()        stops that clock during validation, until trainer_go_on()
 *     trainer_settled()      allows a failure from then on to write the state of this step, not of the one before
 *     trainer_log()          prints one line and writes one record per step
 *     trainer_should_stop()  writes the training state when it is due, or when a signal asks the run to stop
 *     trainer_close()        writes the model and frees everything
 *
 * A trainer that distributes its batch can run on several ranks (dist.h). Rank 0 prints and writes files. Every rank
 * must call the functions marked "Collective" at the same point. Within a step:
 *
 *     dist_share()           assigns the parts of the batch to ranks; t->dist.rank is this rank
 *     dist_grads_begin()     announces the number of backward passes that this rank is about to make
 *     dist_sum()             sums the loss and the counts over the ranks, before trainer_update()
 *
 * The counters that a resumed run needs are a JSON object in the state; each trainer adds its own to t->state, before
 * trainer_should_stop(). An error ends the program with one line on standard error. If it is not the model's, such as a
 * full disk under the metrics or a reward program that has ended, the training state is written first:
 *
 *     trainer_later()        notes a failure in the middle of a step, for the next trainer_should_stop()
 *     trainer_require()      ends the run at once, on all ranks, with the state of the last step
 */
#ifndef LLMC_TRAIN_TRAINER_H
#define LLMC_TRAIN_TRAINER_H

#include "../base/clock.h"             /* clock_seconds */
#include "../base/error.h"             /* die, Error, usage_error, warn, ... */
#include "../base/io.h"                /* Writer, XXH3_64bits_withSeed, writer_abort, writer_open */
#include "../base/json_text.h"         /* json_utf8, json_finite */
#include "../base/launch.h"            /* Launch, launch_of_environment */
#include "../base/options.h"           /* Option, OPT_END, OPT_TEXT, OptionList, ... */
#include "../base/output.h"            /* OUTPUT_READ, output_add, OUTPUT_RESUMED, OUTPUT_STATE, ... */
#include "../base/program.h"           /* program_bytes, program_peak_memory, program_memory, program_stopping */
#include "../base/text.h"              /* TextBuffer, text_free, text_format, token_list_add */
#include "../device.h"                 /* DeviceKind, backend_open, device_dtype, device_kernels */
#include "../dist/dist.h"              /* dist_total, dist_any, Dist, dist_close, ... */
#include "../dist/grads.h"             /* DistGrads, dist_grads_close, dist_grads_discard, dist_grads_open, ... */
#include "../model/backend.h"          /* Backend, Device, Dtype, ScratchUse */
#include "../model/batch.h"            /* Batch, batch_pairs */
#include "../model/config.h"           /* ModelConfig, LoraConfig, gpt2_config, Rope, ... */
#include "../model/huggingface_save.h" /* huggingface_check_output, huggingface_is_output */
#include "../model/lora.h"             /* lora_parse_targets */
#include "../model/model.h"            /* Model, model_free, model_grow_vocab, model_held_bytes, ... */
#include "../model/model_file.h"       /* ModelDtype, model_check_output, model_save, MODEL_FLOAT32, ... */
#include "../model/model_fits.h"       /* FitSide, fit_template_name, fit_extends, fit_model, ... */
#include "../model/model_load.h"       /* ModelFile, ModelLoad, Quantize, model_file_free, ... */
#include "../model/model_state.h"      /* model_save_beside */
#include "../model/model_text.h"       /* model_text_decode, ModelText, model_text_close, model_text_open */
#include "../model/optimizer.h"        /* Optimizer, OptimizerResult, optimizer_take_weights, ... */
#include "../model/peft.h"             /* peft_make_folder, peft_write */
#include "../model/rotary.h"           /* rope_has_lists */
#include "../model/schedule.h"         /* Schedule, schedule_steps, DecayKind, ScheduleKind, ... */
#include "../model/tensors.h"          /* TENSOR_headw */
#include "../model/transformer.h"      /* model_flops */
#include "../model/workspace.h"        /* Workspace, workspace_bytes, workspace_new */
#include "../records/examples.h"       /* Example */
#include "../records/inputs.h"         /* Inputs, inputs_close, inputs_open, input_label, ... */
#include "../records/pairs.h"          /* Pair */
#include "../records/shard.h"          /* Shard, shard_open_all, step_share */
#include "../records/shard_fits.h"     /* fit_shard */
#include "../report/metrics.h"         /* metrics_set, metrics_line, metrics_phase, metrics_fact, ... */
#include "../report/run_facts.h"       /* RunPhase, run_text, RUN_SAVING, run_file, ... */
#include "best_model.h"                /* BestModel, best_model_free, best_model_name, best_model_new, ... */
#include "companion.h"                 /* companion_forget, companion_save, Companion, companion_free */
#include "resume.h"                    /* resume_is_path, resume_place, resume_changes, resume_listed, ... */
#include "run_folder.h"                /* run_folder_path, run_folder_newest, run_folder_check, ... */
#include "trainer_options.h"           /* TrainerOptions, trainer_default_rate, trainer_refuse_unused, ... */

typedef struct Trainer {
    const TrainerOptions *o; /* the command line */
    const Option *options;   /* its table */
    int64_t steps;           /* length of this run in optimizer steps: --max-steps, or the steps in the epochs */
    const char *program;     /* train_sft, ...: name of the stage in the lineage */
    json_t *clusters;        /* of the training data (clusters.h), or NULL */
    Device *device;
    const Backend *backend;
    Model model;
    ModelFile file;
    Optimizer optimizer;
    Dist dist;
    DistGrads grads;
    ModelText text;
    Schedule schedule;
    BestModel best; /* the best evaluation so far */
    Metrics metrics;
    json_t *state;     /* the trainer's counters, saved and resumed */
    int64_t step;      /* optimizer steps, including skipped ones */
    int64_t bad_steps; /* steps skipped for NaN or infinity */
    int64_t tokens;  /* TRL's num_tokens: tokens of prompts and completions so far, each prompt with each completion */
    int64_t trained; /* tokens with a loss so far, over all passes */
    double flops;    /* FLOPs of this step */
    double peak;     /* measured, FLOP/s */
    double nominal_peak; /* vendor figure, FLOP/s; 0 if unknown */
    size_t predicted;    /* bytes */
    double step_start;   /* seconds */
    bool last_bad;       /* the loss of the last step was not finite */
    OptimizerResult update;
    double learning_rate;       /* learning rate of the last step */
    const ModelConfig *teacher; /* the shape of distillation's teacher, or NULL */
    Companion companion;        /* a second model that is saved with every state; unused unless the trainer sets it */
    bool intact;                /* the weights are those of the counters in `state`, so that a state can be written */
    int64_t intact_tokens, intact_trained; /* `tokens` and `trained` at that time */
    Error broken;         /* the failure that ends the run at the next trainer_should_stop(); "" until then */
    bool written;         /* the outputs are written */
    bool options_written; /* the file of the options is written */
} Trainer;

/* Adds the FLOPs of `passes` passes of a batch; a forward pass is one, a backward pass two. */
static inline void trainer_count_flops(Trainer *t, const Model *m, const Batch *b, double passes) {
    t->flops += model_flops(&m->config, b->rows, b->targets, batch_pairs(b), passes);
}

static inline int64_t state_int(const json_t *state, const char *key) {
    return json_integer_value(json_object_get(state, key));
}
static inline double state_real(const json_t *state, const char *key) {
    return json_number_value(json_object_get(state, key));
}

/* The shape of a new model from --layers and the related options, or NULL if --layers is not given. */
static inline const ModelConfig *trainer_shape(const TrainerOptions *o, int32_t data_vocab, ModelConfig *c) {
    if (!o->layers) return NULL;
    const int64_t width = o->width ? o->width : 64 * o->layers;
    const int64_t heads = o->heads ? o->heads : width >= 64 ? width / 64 : 1;
    *c = gpt2_config((int32_t)o->layers, (int32_t)heads, (int32_t)width, (int32_t)(o->vocab ? o->vocab : data_vocab),
                     (int32_t)(o->context ? o->context : 1024));
    return c;
}

/* The path of the output or of the adapters, without slashes at its end, with the suffix appended. NULL if the output
 * is a stream or a device. */
static inline char *trainer_beside(const TrainerOptions *o, const char *suffix) {
    struct stat about;
    const char *output = o->output ? o->output : o->adapter_output;
    if (!output || !strcmp(output, "-")) return NULL;
    if (!stat(output, &about) && !S_ISREG(about.st_mode) && !S_ISDIR(about.st_mode)) return NULL;
    size_t n = strlen(output);
    while (n > 1 && output[n - 1] == '/') n--;
    char *path = (char *)xmalloc(n + strlen(suffix) + 1);
    sprintf(path, "%.*s%s", (int)n, output, suffix);
    return path;
}

/* The path of the state of a step: --state, in the folder of --output-dir, or beside the output. NULL if there is no
 * such path. */
static inline char *trainer_state_path(const TrainerOptions *o, int64_t step) {
    if (o->state) return xstrdup(o->state);
    return o->output_dir ? run_folder_state(o->output_dir, step) : trainer_beside(o, ".state");
}

/* Whether every state has a file of its own, in the folder of --output-dir. */
static inline bool trainer_keeps_states(const TrainerOptions *o) { return o->output_dir && !o->state; }

/* Sets the outputs that the folder of --output-dir holds, unless the command line gives their paths. */
static inline void trainer_use_folder(TrainerOptions *o, bool validates) {
    if (!o->output_dir) return;
    if (!*o->output_dir) usage_error("--output-dir: the name is empty");
    if (!o->output && !o->adapter_output) o->output = run_folder_path(o->output_dir, "model.safetensors");
    if (!o->metrics) o->metrics = run_folder_path(o->output_dir, "metrics.jsonl");
    if (!o->best.file && validates) o->best.file = run_folder_path(o->output_dir, "best.safetensors");
    if (!o->report) o->report = run_folder_path(o->output_dir, "report.html");
}

/* --resume without a value continues from the state of the output, or from the newest in the folder. */
static inline void trainer_find_state(TrainerOptions *o) {
    if (!o->resume || *o->resume) return;
    const int64_t newest = trainer_keeps_states(o) ? run_folder_newest(o->output_dir) : 0;
    if (newest < 0)
        die("--resume: %s has no training state; --overwrite-output-dir begins the run again", o->output_dir);
    o->resume = trainer_state_path(o, newest);
    if (!o->resume) usage_error("--resume: give the state's file, since the output has no name");
    if (access(o->resume, R_OK)) die("%s: there is no state to resume: %s", o->resume, strerror(errno));
}

/* Rejects a command line without an output for all that is trained, and options of all trainers without effect. epochs:
 * the variable of --num-train-epochs; value_head: the model has a value head, for which a folder of adapters has no
 * place. */
static inline void trainer_check_options(TrainerOptions *o, const Option *table, const double *epochs,
                                         bool value_head) {
    trainer_use_folder(o, trainer_validates(table));
    if (!o->output && !o->adapter_output) usage_error("-o/--output is required (or --output-dir or --adapter-output)");
    if (o->overwrite_output_dir && o->resume)
        usage_error("--overwrite-output-dir: --resume continues the run in the folder; give only one of them");
    if (!o->output && value_head)
        usage_error("--adapter-output: the folder has no place for the model's value head; give -o/--output, too");
    if (o->adapter_output && value_head) warn("--adapter-output: the value head is written to %s only", o->output);
    trainer_refuse_unused(o, table, epochs);
    trainer_find_state(o);
    char *state = trainer_state_path(o, 0);
    if (o->save_steps && !state) usage_error("--save-steps: give --state, since the output has no name");
    free(state);
}

/* How a run uses the path of an option. */
static inline OutputUse trainer_use(const char *option) {
    static const char *const written[] = {"output",        "best",       "metrics",        "report",     "tensorboard",
                                          "critic-output", "prm-output", "adapter-output", "output-dir", "rollouts"};
    if (!strcmp(option, "resume")) return OUTPUT_RESUMED;
    if (!strcmp(option, "state")) return OUTPUT_STATE;
    return resume_listed(option, written, sizeof written / sizeof *written) ? OUTPUT_WRITTEN : OUTPUT_READ;
}

/* The files that an option names several of: a list's values, or the lines of --mix. None of another option. */
static inline bool trainer_named_files(const Option *o, Inputs *files, Error *e) {
    *files = (Inputs){0};
    if (o->kind == OPT_LIST && !strcmp(o->argument, "FILE"))
        return inputs_open(files, o->name, (const OptionList *)o->value, e);
    const char *list = o->kind == OPT_TEXT && !strcmp(o->name, "mix") ? *(const char *const *)o->value : NULL;
    return !list || inputs_read(files, "--mix", list, e);
}

/* Rejects a command line on which an output is also an input or another output, also through links, and ends the
 * program if another run is writing one of the outputs. TensorBoard's folder may be that of other files. */
static inline void trainer_claim(const TrainerOptions *o, const Option *table) {
    Error e;
    OutputPaths p = {0};
    const bool lines = o->metrics && strcmp(o->metrics, "-");
    char *state = trainer_state_path(o, 0), *samples = lines ? metrics_samples_path(o->metrics) : NULL;
    for (const Option *i = table; i->kind != OPT_END; i++) {
        if (i->kind == OPT_TEXT && resume_is_path(i) && strcmp(i->name, "state") && strcmp(i->name, "tensorboard"))
            output_add(&p, i->name, *(const char *const *)i->value, trainer_use(i->name));
        Inputs files;
        if (!trainer_named_files(i, &files, &e)) usage_error("%s%s", i->kind == OPT_LIST ? "--" : "", e.text);
        for (int k = 0; k < files.count; k++) output_add(&p, i->name, files.path[k], OUTPUT_READ);
        inputs_close(&files);
    }
    output_add(&p, "state", state, OUTPUT_STATE);
    output_add(&p, "metrics", samples, OUTPUT_WRITTEN);
    if (!output_distinct(&p, &e)) usage_error("%s", e.text);
    if (!output_lock(&p, &e)) die("%s", e.text);
    output_free(&p);
    free(state), free(samples);
}

/* The number of input files that are standard input. */
static inline int trainer_pipes(const Option *table) {
    int pipes = 0;
    for (const Option *o = table; o->kind != OPT_END; o++) {
        if (!resume_is_path(o) || (trainer_use(o->name) != OUTPUT_READ && trainer_use(o->name) != OUTPUT_RESUMED))
            continue;
        if (o->kind == OPT_LIST) {
            const OptionList *list = (const OptionList *)o->value;
            for (int i = 0; i < list->count; i++) {
                const size_t label = input_label(list->items[i]);
                const char *path = list->items[i] + (label ? label + 1 : 0);
                pipes += !strcmp(path, "-") || !strncmp(path, "-:", 2);
            }
        } else {
            const char *path = *(const char *const *)o->value;
            pipes += path && !strcmp(path, "-");
        }
    }
    return pipes;
}

/* Rejects a command line with two streams on standard output or input, with one path for two things, or with an output
 * that cannot be written, before the run starts. more: one more output file of the trainer, or NULL. */
static inline void trainer_check_files(const TrainerOptions *o, const Option *table, const char *more) {
    Error e;
    Writer w;
    struct stat about;
    char *state = trainer_state_path(o, 0);
    const char *outputs[] = {o->output, o->best.file, more, state, o->metrics, o->report};
    const int in = trainer_pipes(table);
    int out = 0;
    for (int i = 0; i < 6; i++) out += outputs[i] && !strcmp(outputs[i], "-");
    const Launch launch = launch_of_environment();
    if (in && launch.ranks > 1) usage_error("-: %d ranks cannot share standard input; give files", launch.ranks);
    if (in > 1) usage_error("-: only one input can be standard input");
    if (out > 1) usage_error("-: only one output can be standard output");
    if (!launch.rank && o->output_dir && !run_folder_make(o->output_dir, &e)) die("%s", e.text);
    if (!launch.rank) trainer_claim(o, table);
    if (!launch.rank && o->output_dir && !run_folder_check(o->output_dir, o->resume, o->overwrite_output_dir, &e))
        die("%s", e.text);
    if (!launch.rank && o->adapter_output && !peft_make_folder(o->adapter_output, &e)) die("%s", e.text);
    for (int i = 0; i < 4 && !launch.rank; i++) {
        if (!outputs[i] || !strcmp(outputs[i], "-")) continue;
        if (i < 3 && huggingface_is_output(outputs[i])) {
            if (!huggingface_check_output(outputs[i], &e)) die("%s", e.text);
            continue;
        }
        if (!stat(outputs[i], &about) && !S_ISREG(about.st_mode) && !S_ISDIR(about.st_mode))
            continue; /* the reader of a FIFO would take this for the end of the file */
        if (!writer_open(&w, outputs[i], &e)) die("%s", e.text);
        writer_abort(&w);
    }
    free(state);
}

/* ---- a run that fails ------------------------------------------------------------------------------------------ */

/* The run whose record trainer_fail() ends. */
static inline Trainer **trainer_open_run(void) {
    static Trainer *run;
    return &run;
}

/* Ends the record of the run that is open, if it has begun, so that its page and its metrics give the reason. */
static inline void trainer_fail(const Error *reason) {
    Trainer *t = *trainer_open_run();
    Error e;
    if (!t || !t->metrics.begun) return;
    *trainer_open_run() = NULL;
    t->metrics.status = "failed";
    metrics_result(&t->metrics, "reason", run_text(reason->text));
    metrics_close(&t->metrics, &e);
}

/* For atexit(3): die() may end the run. */
static inline void trainer_at_exit(void) {
    if (error_last()->text[0]) trainer_fail(error_last());
}

/* ---- ranks ----------------------------------------------------------------------------------------------------- */

static inline bool trainer_write_state(Trainer *t, const char *path, Error *e);

/* The callback `failed` of dist.h: reports the step in which the run ends and the path of its last state, which is
 * first written, if that is possible without the other ranks, and ends the record of the run. A GPU may still wait for
 * the other ranks, so it is not used. */
static inline void trainer_failed(void *trainer, const Error *e) {
    Trainer *t = (Trainer *)trainer;
    Error unwritten = {""};
    metrics_clear(&t->metrics);
    char *state = trainer_state_path(t->o, t->step);
    if (state && t->intact && t->step && !t->optimizer.sharded && !t->backend->stream)
        trainer_write_state(t, state, &unwritten);
    if (trainer_keeps_states(t->o)) {
        free(state);
        state = trainer_state_path(t->o, run_folder_newest(t->o->output_dir));
    }
    const bool there = state && !access(state, R_OK);
    fprintf(stderr, "%s: %s; the run ends in step %lld%s%s%s%s\n", program_invocation_short_name, e->text,
            (long long)t->step + 1, there ? ", the last state is " : "", there ? state : "",
            unwritten.text[0] ? "; " : "", unwritten.text);
    free(state);
    trainer_fail(e);
}

/* Ends the run if a rank's value differs from that of rank 0. what: the file or options that it belongs to.
 * Collective. */
static inline void trainer_agree(Trainer *t, uint64_t value, const char *what) {
    const int rank = dist_differs(&t->dist, value);
    if (rank >= 0 && t->dist.rank == 0) die("%s: rank %d differs from rank 0", what, rank);
    if (rank >= 0) pause(); /* the launcher ends this rank */
}

/* Keeps a hash in the state under a key. False if a resumed run's state has another one there. */
static inline bool trainer_keep_hash(json_t *state, const char *key, uint64_t hash) {
    char name[20];
    snprintf(name, sizeof name, "%016llx", (unsigned long long)hash);
    const char *before = json_string_value(json_object_get(state, key));
    if (before && strcmp(before, name)) return false;
    json_object_set_new(state, key, json_string(name));
    return true;
}

/* Makes a file with this hash a part of the run: it must be the same on all ranks, and when the run is resumed. option:
 * that names it. Call it after trainer_open(). Collective. */
static inline void trainer_file(Trainer *t, const char *option, const char *path, uint64_t hash) {
    json_t *files = json_object_get(t->state, "files");
    trainer_agree(t, hash, path);
    if (!files) json_object_set_new(t->state, "files", files = json_object());
    if (!trainer_keep_hash(files, option, hash))
        die("%s: it is not the file of --%s that the run began with", path, option);
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* The model in training, for model_fits(). */
static inline FitSide trainer_side(const Trainer *t) { return fit_model("the model", &t->model.config, &t->file); }

/* Ends the program unless `model` can be run on tokens of `other`; see model_fits(). */
static inline void trainer_fits(const Trainer *t, const FitSide *model, const FitSide *other, int32_t longest) {
    Error e, note = {0};
    if (!model_fits(model, other, longest, &note, &e)) die("%s", e.text);
    if (note.text[0] && t->dist.rank == 0) warn("%s", note.text);
}

/* Sets the number of tokens of the longest sequence that the run can make (see model_set_longest()). Call it before the
 * first forward pass. */
static inline void trainer_set_longest(const Trainer *t, int32_t longest) {
    const Rope *r = &t->model.config.rope;
    model_set_longest(&t->model, longest);
    if (rope_has_lists(r) && longest > r->original && t->dist.rank == 0)
        warn(
            "the longest sequence has up to %d tokens, more than longrope's original context of %d: its list of factors "
            "for long sequences serves all of them; transformers takes the short one for batches of up to %d tokens",
            longest, r->original, r->original);
}

/* Checks that the shard's vocabulary, tokenizer and chat template are the model's, and that all ranks have the same
 * shard. Collective. */
static inline void trainer_check_shard(Trainer *t, const Shard *s) {
    const FitSide model = trainer_side(t), data = fit_shard(s);
    trainer_fits(t, &model, &data, 0);
    trainer_agree(t, s->payload_hash, s->name);
}

/* Gives a model in training more tokens, which use padding rows. Its tokenizer, which does not have them, is forgotten. */
static inline void trainer_grow_vocab(Model *m, const Optimizer *o, ModelFile *f, int32_t vocab, uint64_t seed) {
    const size_t before = (size_t)m->config.vocab, C = (size_t)m->config.width, rows = ((size_t)vocab - before) * C;
    model_grow_vocab(m, vocab, seed);
    optimizer_take_weights(o, m, before * C, rows);
    if (!m->config.tied) optimizer_take_weights(o, m, m->tensor[TENSOR_headw].offset + before * C, rows);
    free(f->tokenizer);
    f->tokenizer = NULL;
}

/* Gives the model the tokens of the data that are new to it, which use padding rows, if it has enough of them. */
static inline void trainer_take_tokens(Trainer *t, const Shard *data, bool adapters) {
    const FitSide model = trainer_side(t), other = fit_shard(data);
    if (data->vocab <= t->model.config.vocab || data->vocab > t->model.config.padded_vocab) return;
    if (t->file.tokenizer && !fit_extends(&model, &other)) return;
    if (t->dist.rank == 0)
        warn("%s: %d tokens are new to the model, usually special tokens of a chat template; they take padding rows%s",
             data->name, data->vocab - t->model.config.vocab,
             adapters ? ", which adapters do not train: they stay random" : "");
    trainer_grow_vocab(&t->model, &t->optimizer, &t->file, data->vocab, (uint64_t)t->o->seed);
}

/* Takes the data's tokenizer and chat template if the model has none. A trainer that teaches the template of its data
 * takes it in any case. */
static inline void trainer_take_texts(Trainer *t, const Shard *data) {
    char *own = t->file.chat_template;
    if (!t->file.tokenizer && data->tokenizer_bytes) {
        t->file.tokenizer = xmalloc(data->tokenizer_bytes);
        t->file.tokenizer_bytes = data->tokenizer_bytes;
        memcpy(t->file.tokenizer, data->tokenizer, data->tokenizer_bytes);
    }
    if (!data->chat_template[0] || (own && !strcmp(own, data->chat_template))) return;
    if (own && !t->o->teaches_template) return;
    if (own && t->dist.rank == 0)
        warn("%s: its chat template is %s and the model's is %s: the model is trained on the former, which the output "
             "takes",
             data->name, fit_template_name(data->chat_template), fit_template_name(own));
    free(own);
    t->file.chat_template = xstrdup(data->chat_template);
}

/* The identity of the training shard, as stored in a state: its number of records and the hash of its payload. */
static inline json_t *trainer_shard_name(const Shard *s) {
    char name[64];
    snprintf(name, sizeof name, "%lld records %016llx", (long long)s->count, (unsigned long long)s->payload_hash);
    return json_string(name);
}

/* From here on a failure of this step can write a state: the counters in t->state are those of the weights.
 * trainer_should_stop() calls it; a trainer that has set its counters earlier does, before validation. */
static inline void trainer_settled(Trainer *t) {
    t->intact = true;
    t->intact_tokens = t->tokens;
    t->intact_trained = t->trained;
}

/* Takes the counters from the loaded state. Rejects a state of another trainer or another shard. */
static inline void trainer_resume(Trainer *t, const Shard *data) {
    json_t *s = t->file.trainer ? json_loads(t->file.trainer, 0, NULL) : NULL, *shard = trainer_shard_name(data);
    if (!json_is_object(s)) die("%s: it is a model, not a training state", t->o->resume);
    const char *stage = json_string_value(json_object_get(s, "stage"));
    if (!stage || strcmp(stage, t->program))
        die("%s: it is a state of %s, not of %s", t->o->resume, stage ? stage : "another program", t->program);
    if (!json_equal(shard, json_object_get(s, "shard")))
        die("%s: the state was made with a different shard than %s", t->o->resume, data->name);
    json_decref(shard), json_decref(t->state);
    t->state = s;
    t->step = state_int(s, "step");
    t->bad_steps = state_int(s, "bad_steps");
    t->tokens = state_int(s, "tokens");
    t->trained = state_int(s, "trained_tokens");
    t->optimizer.step = state_int(s, "optimizer_step");
    trainer_settled(t);
    if (t->step < 1 || state_int(s, "epoch") < 0 || state_int(s, "position") < 0)
        die("%s: the state has invalid counters (step, epoch or position out of range)", t->o->resume);
}

/* The adapters of --lora-rank and the related options, which are checked. */
static inline LoraConfig trainer_lora(const TrainerOptions *o) {
    Error e;
    LoraConfig lora = {.rank = (int32_t)o->lora_rank};
    if (o->lora_rank && o->adapter) usage_error("--lora-rank and --adapter: give only one of them");
    if (o->adapter_output && !o->lora_rank && !o->adapter)
        usage_error("--adapter-output: requires --lora-rank or --adapter");
    if (o->quantize && !o->lora_rank && !o->adapter)
        usage_error("--quantize: requires --lora-rank or --adapter; weights that are trained cannot be quantised");
    if (!o->lora_rank) return lora;
    if (!lora_parse_targets(o->lora_targets, &lora.targets, &e)) usage_error("--lora-targets: %s", e.text);
    const double rank = (double)o->lora_rank;
    lora.dora = o->use_dora;
    lora.scale = (float)(o->lora_alpha / (o->use_rslora ? sqrt(rank) : rank));
    return lora;
}

/* The files of -j or another option, whole, for inputs_close(). Those of -i are mixing_inputs(). */
static inline Inputs trainer_inputs(const char *option, const OptionList *list, bool named) {
    Error e;
    Inputs files;
    if (!inputs_open(&files, option, list, &e) || !inputs_whole(&files, option, named, &e)) usage_error("%s", e.text);
    return files;
}

/* Opens the files as one shard; token shards may be among them if `text`. */
static inline void trainer_open_files(Shard *s, const Inputs *files, bool text) {
    Error e;
    if (!shard_open_all(s, (const char *const *)files->path, files->count, text, &e)) die("%s", e.text);
}

enum { VLLM_LORA_RANK = 16 }; /* the default of vLLM's --max-lora-rank */

/* Says which adapters of --adapter-output vLLM refuses. */
static inline void trainer_warn_adapters(const Trainer *t) {
    const LoraConfig *lora = &t->model.config.lora;
    if (!t->o->adapter_output) return;
    if (lora->dora) warn("--adapter-output: vLLM does not load adapters of DoRA; give it the merged model of -o");
    else if (lora->rank > VLLM_LORA_RANK)
        warn("--adapter-output: vLLM loads adapters of rank %d only with --max-lora-rank %d or more", (int)lora->rank,
             (int)lora->rank);
}

/* Loads or creates the model. data: the training shard; a new model takes its vocabulary and tokenizer. */
static inline void trainer_open(Trainer *t, const char *program, TrainerOptions *o, const Shard *data,
                                bool value_head) {
    Error e;
    const LoraConfig lora = trainer_lora(o);
    trainer_default_rate(o);
    o->dtype = device_dtype((DeviceKind)o->device, o->dtype);
    *t = (Trainer){.o = o, .program = program, .state = json_object()};
    t->best = best_model_new(&o->best);
    if (!o->checkpoint && !o->layers && !o->resume)
        usage_error("-c/--checkpoint is required (or --layers, or --resume)");
    if (o->checkpoint && o->layers) usage_error("-c/--checkpoint and --layers: give only one of them");
    if (!backend_open((DeviceKind)o->device, (Dtype)o->dtype, &t->backend, &t->device, &e)) die("%s", e.text);
    ModelConfig shape, descriptor;
    bool ok = true;
    const ModelConfig *new_shape = trainer_shape(o, data->vocab, &shape);
    if (o->checkpoint && gpt2_config_descriptor(o->checkpoint, &descriptor, &ok, &e) && ok) {
        shape = gpt2_config(descriptor.layers, descriptor.heads, descriptor.width,
                            (int32_t)(o->vocab ? o->vocab : data->vocab), (int32_t)(o->context ? o->context : 1024));
        new_shape = &shape;
    }
    const char *from = o->resume ? o->resume : o->checkpoint;
    if (!dist_open(&t->dist, o->dist_timeout, t->backend, t->device, &e)) die("%s", e.text);
    t->dist.failed = trainer_failed;
    t->dist.failed_context = t;
    const ModelLoad how = {.shape = new_shape,
                           .value_head = value_head,
                           .gradients = true,
                           .lora = lora,
                           .adapter = o->adapter,
                           .quantize = (Quantize)o->quantize,
                           .resume = o->resume,
                           .seed = (uint64_t)o->seed,
                           .share = {t->dist.rank, t->dist.ranks, (int)o->zero}};
    if (!model_load_as(&t->model, &t->file, o->checkpoint, &how, t->backend, t->device, &t->optimizer, &e))
        die("%s", e.text);
    if (t->file.note) warn("%s", t->file.note);
    trainer_warn_adapters(t);
    if (!o->takes_scorers && !o->resume && !model_fits_policy(&t->file, from ? from : "the model", &e))
        die("%s", e.text);
    dist_grads_open(&t->grads, &t->dist, &t->model, &t->optimizer, false);
    if (!o->resume && !new_shape) trainer_take_tokens(t, data, lora.rank > 0);
    trainer_take_texts(t, data);
    trainer_check_shard(t, data);
    if (o->output && !model_check_output(&t->model.config, &t->file, o->output, (ModelDtype)o->output_dtype, &e))
        die("%s", e.text);
    if (o->best.file && !model_check_output(&t->model.config, &t->file, o->best.file, (ModelDtype)o->output_dtype, &e))
        die("%s", e.text);
    if (!model_text_open(&t->text, &t->file, from ? from : data->name, &e)) die("%s", e.text);
    token_list_add(&t->file.stops, t->text.stop);
    optimizer_configure(&t->optimizer, o->beta1, o->beta2, o->eps, o->weight_decay, o->max_grad_norm);
    if (o->resume) trainer_resume(t, data);
    else if (t->file.trainer) optimizer_reset(&t->optimizer, &t->model); /* a state used as a model */
    json_object_set_new(t->state, "shard", trainer_shard_name(data));
    t->clusters = json_incref(data->clusters);
    const bool speaks = t->dist.rank == 0;
    if (!metrics_open(&t->metrics, program, speaks ? o->metrics : NULL, speaks ? o->tensorboard : NULL,
                      speaks ? o->report : NULL, o->resume ? t->step : -1, &e))
        die("%s", e.text);
    t->metrics.quiet = !speaks;
    t->metrics.brief = o->quiet;
    trainer_agree(t, t->file.hash, from ? from : "model");
    if (o->adapter && t->dist.ranks > 1) trainer_agree(t, model_weights_hash(&t->model), o->adapter);
}

/* Ends the program if a resumed run changes an option that shapes it; see resume.h. */
static inline void trainer_check_resume(const Trainer *t, const Option *table) {
    json_t *last = json_array_get(t->file.lineage, json_array_size(t->file.lineage) - 1);
    json_t *before = json_object_get(last, "options"), *changes = resume_changes(table, before);
    TextBuffer text = {0};
    const bool checked = t->model.config.lora.rank || json_object_get(t->state, "reference") ||
                         json_object_get(t->state, "ref_logps"); /* by the hash of -c */
    const char *from = json_string_value(json_object_get(before, "checkpoint"));
    if (!checked && t->o->checkpoint && strcmp(from ? from : "", t->o->checkpoint))
        json_object_set_new(changes, "checkpoint", json_pack("[s,s]", from ? from : "", t->o->checkpoint));
    if (json_object_size(changes))
        die("%s: the run that wrote it had other options: %s; repeat them, or start a new run from it with -c",
            t->o->resume, resume_text(changes, &text));
    resume_update(table, before);
    json_decref(changes), text_free(&text);
}

/* Adds a stage to a model's lineage; takes over `options`, which may be NULL. */
static inline void trainer_add_stage(ModelFile *f, const char *stage, json_t *options) {
    char hash[20];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)f->hash);
    json_t *entry = json_object();
    json_object_set_new(entry, "stage", json_string(stage));
    json_object_set_new(entry, "parent", f->hash ? json_string(hash) : json_null());
    if (options) json_object_set_new(entry, "options", options);
    json_array_append_new(f->lineage, entry);
}

/* The values of the options that have one, all of them or those of the lineage; the caller owns the object. */
static inline json_t *trainer_values(const Option *table, bool all) {
    json_t *values = (json_t *)checked_object(json_object(), "a JSON object");
    TextBuffer value = {0};
    for (const Option *o = table; o->kind != OPT_END; o++) {
        if (o->kind == OPT_GROUP || (!all && resume_place(o->name))) continue;
        option_value(o, &value);
        if (value.length) json_object_set_new(values, o->name, json_utf8(value.text, value.length));
    }
    text_free(&value);
    return values;
}

/* Adds an entry for this stage to the lineage: its options and the parent's hash. A resumed run has the entry from its
 * state, with its own values of the options that it may change. */
static inline void trainer_lineage(Trainer *t, const Option *table) {
    if (t->o->resume) return;
    trainer_add_stage(&t->file, t->program, trainer_values(table, false));
    json_t *entry = json_array_get(t->file.lineage, json_array_size(t->file.lineage) - 1);
    if (t->clusters) json_object_set(entry, "clusters", t->clusters);
}

static inline uint64_t trainer_options_hash(const Option *table) {
    uint64_t hash = 0;
    TextBuffer value = {0};
    for (const Option *o = table; o->kind != OPT_END; o++) {
        if (o->kind == OPT_GROUP || (o->kind == OPT_TEXT && resume_place(o->name)))
            continue; /* paths may differ between ranks */
        option_value(o, &value);
        hash = XXH3_64bits_withSeed(value.text, value.length, hash);
    }
    text_free(&value);
    return hash;
}

/* Whether the file of a run's options leaves this one out: what concerns this start alone, and the outputs whose paths
 * follow from --output-dir. */
static inline bool trainer_leaves_out(const Option *o) {
    if (!strcmp(o->name, "resume") || !strcmp(o->name, "overwrite-output-dir")) return true;
    return o->kind == OPT_TEXT && resume_place(o->name) && !option_given(o->value);
}

/* Writes the options of this run, defaults included, to a file next to the output that --config reads; not over the
 * file that --config has read. Without --resume: the file describes the whole run. */
static inline void trainer_write_options(Trainer *t) {
    Error e;
    if (t->options_written || t->dist.rank) return;
    t->options_written = true;
    char *path = trainer_beside(t->o, ".yaml");
    struct stat here, read;
    const bool exists = path && !stat(path, &here);
    const char *config = *options_config();
    const bool same =
        exists && config && !stat(config, &read) && read.st_ino == here.st_ino && read.st_dev == here.st_dev;
    if (path && !same && (!exists || S_ISREG(here.st_mode)) && !options_write(t->options, path, trainer_leaves_out, &e))
        warn("the options of this run are not kept: %s", e.text);
    free(path);
}

/* The files that the options name as inputs, with sizes and hashes; the caller owns the array. */
static inline json_t *trainer_files(const Option *table) {
    Error e;
    json_t *all = (json_t *)checked_object(json_array(), "a JSON array");
    for (const Option *o = table; o->kind != OPT_END; o++) {
        if (!resume_is_path(o) || (trainer_use(o->name) != OUTPUT_READ && trainer_use(o->name) != OUTPUT_RESUMED))
            continue;
        const char *path = o->kind == OPT_TEXT ? *(const char *const *)o->value : NULL;
        if (path) json_array_append_new(all, run_file(o->name, path));
        Inputs files;
        if (!trainer_named_files(o, &files, &e)) continue;
        for (int k = 0; k < files.count; k++) json_array_append_new(all, run_file(o->name, files.path[k]));
        inputs_close(&files);
    }
    return all;
}

/* Whether this rank writes the record of the run, which the metrics and the report have. */
static inline bool trainer_records(const Trainer *t) { return !t->dist.rank && (t->o->metrics || t->o->report); }

/* Gives the record of the run what only the trainer has: the device, the options, the files, the lineage. TensorBoard
 * gets the options alone. */
static inline void trainer_describe(Trainer *t, const Option *table, const char *model, const char *device) {
    if (!trainer_records(t) && (t->dist.rank || !t->o->tensorboard)) return;
    Metrics *m = &t->metrics;
    metrics_describe(m, LLMC_VERSION);
    metrics_fact(m, "model", run_text(model));
    metrics_fact(m, "device", run_text(device));
    metrics_fact(m, "kernels", run_text(device_kernels(t->backend)));
    metrics_fact(m, "args", trainer_values(table, true));
    if (trainer_records(t)) metrics_fact(m, "files", trainer_files(table));
    metrics_fact(m, "lineage", json_deep_copy(t->file.lineage));
    if (!*trainer_open_run()) atexit(trainer_at_exit);
    *trainer_open_run() = t;
}

/* Prints the configuration, the model and the predicted memory. rows: of the largest micro-batch; sampled: samples that are
 * drawn at once; more: bytes that the trainer allocates in addition (a reference, rollouts). Collective. */
static inline void trainer_announce(Trainer *t, const Option *table, int rows, int sampled, size_t more) {
    const ModelConfig *c = &t->model.config;
    const Backend *b = t->backend;
    const size_t model = model_held_bytes(&t->model) + t->model.grads_count * sizeof(float),
                 moments = optimizer_bytes_share(c, b, t->model.share);
    const size_t work = workspace_bytes(c, b, rows, rows, rows, true, (int)t->o->recompute);
    const size_t scratch =
        b->scratch_predict(t->device, &(ScratchUse){.weights = t->model.stored,
                                                    .rows = rows,
                                                    .sampled = sampled,
                                                    .width = c->width,
                                                    .widest = model_widest(c),
                                                    .padded_vocab = c->padded_vocab,
                                                    .teacher_width = t->teacher ? t->teacher->width : 0,
                                                    .teacher_vocab = t->teacher ? t->teacher->padded_vocab : 0,
                                                    .adapters = lora_widest(c),
                                                    .quantized = model_largest_matrix(&t->model),
                                                    .quantized_head = model_output_blocks(&t->model) != NULL});
    /* On a CPU the process has what it holds now, and the pages of gradients and of moments that are not from a state, which
     * appear in the first step. It may have been larger while it loaded the model. */
    const size_t fresh = t->model.grads_count * sizeof(float) + (t->o->resume ? 0 : moments);
    const size_t held = b->memory_peak ? model + moments : program_memory() + fresh, loading = program_peak_memory();
    t->predicted = held + work + scratch + more;
    if (!b->memory_peak && loading > t->predicted) t->predicted = loading;
    t->peak = dist_total(&t->dist, b->peak(t->device));
    t->nominal_peak = b->nominal_peak ? dist_total(&t->dist, b->nominal_peak(t->device)) : 0;
    char text[256], device[256], a[16], d[16], f[16], g[16], h[16], i[16];
    trainer_agree(t, trainer_options_hash(table), "options");
    if (t->o->resume) trainer_check_resume(t, table);
    t->options = table;
    if (t->dist.rank == 0 && !t->o->quiet) options_print(table);
    if (t->dist.rank == 0 && t->o->output && model_hides_template(&t->file, t->o->output))
        warn("%s: other programs will not find the chat template, which is not Jinja", t->o->output);
    if (t->dist.rank == 0 && t->o->output && t->model.matrix)
        warn("%s: it will hold the float values of the quantised weights, with the adapters added to them; "
             "--adapter-output writes the adapters alone",
             t->o->output);
    TextBuffer value = {0};
    for (const Option *o = table; o->kind != OPT_END; o++) {
        option_value(o, &value);
        metrics_config(&t->metrics, o->name, o->kind == OPT_GROUP ? NULL : value.text);
    }
    text_free(&value);
    snprintf(text, sizeof text, "%d layer%s, %d head%s, width %d, vocabulary %d, context %d: %.3g M parameters",
             c->layers, PLURAL(c->layers), c->heads, PLURAL(c->heads), c->width, c->vocab, c->context,
             (double)t->model.parameters * 1e-6);
    metrics_line(&t->metrics, "model   %s", text);
    metrics_header(&t->metrics, text);
    metrics_line(&t->metrics,
                 "memory  weights and gradients %s, optimizer %s, activations %s, scratch %s, rest %s; peak about %s",
                 program_bytes(a, model), program_bytes(d, moments), program_bytes(f, work), program_bytes(g, scratch),
                 program_bytes(h, more), program_bytes(i, t->predicted));
    char ranks[32] = "";
    if (t->dist.ranks > 1) snprintf(ranks, sizeof ranks, "%d ranks of ", t->dist.ranks);
    snprintf(device, sizeof device, "%s, %s%d thread%s, %s, %.0f GFLOP/s measured", b->name, ranks,
             omp_get_max_threads(), PLURAL(omp_get_max_threads()), t->o->dtype ? "bf16" : "float32", t->peak * 1e-9);
    metrics_line(&t->metrics, "device  %s", device);
    metrics_header(&t->metrics, device);
    trainer_lineage(t, table);
    trainer_describe(t, table, text, device);
}

/* Allocates the activations of micro-batches of `rows` rows. */
static inline void trainer_workspace(const Trainer *t, Workspace *w, int rows) {
    Error e;
    if (!workspace_new(w, &t->model, rows, rows, rows, true, (int)t->o->recompute, &e))
        die("%s; lower --micro-tokens or raise --recompute", e.text);
}

/* Removes the states that are more than --save-total-limit: the oldest of those that this run wrote, but neither the
 * newest nor that of the best model. A state whose companion a killed run left is removed again. */
static inline void trainer_limit_states(Trainer *t) {
    const int64_t limit = t->o->save_total_limit;
    json_t *steps = json_object_get(t->state, "checkpoints");
    if (!limit || !trainer_keeps_states(t->o) || t->dist.rank) return;
    const json_t *best = json_object_get(t->state, "best_step");
    size_t left = json_array_size(steps);
    for (size_t i = 0; left > (size_t)limit && i + 1 < json_array_size(steps);) {
        const int64_t step = json_integer_value(json_array_get(steps, i));
        if (json_is_integer(best) && step == json_integer_value(best)) {
            i++;
            continue;
        }
        run_folder_remove_state(t->o->output_dir, step, t->companion.save ? t->companion.kind : NULL);
        json_array_remove(steps, i);
        left--;
    }
}

/* Adds the state that is about to be written to the list of those that this run wrote, which the state holds, too. */
static inline void trainer_list_state(Trainer *t) {
    json_t *steps = json_object_get(t->state, "checkpoints");
    if (!trainer_keeps_states(t->o)) return;
    if (!steps) json_object_set_new(t->state, "checkpoints", steps = json_array());
    for (size_t i = json_array_size(steps); i-- > 0;)
        if (json_integer_value(json_array_get(steps, i)) >= t->step) json_array_remove(steps, i);
    json_array_append_new(steps, json_integer(t->step));
}

/* Prepares the folder of --output-dir at the beginning of a run. */
static inline void trainer_begin_folder(Trainer *t) {
    const TrainerOptions *o = t->o;
    if (t->dist.rank || !o->output_dir) return;
    if (o->overwrite_output_dir) run_folder_remove_states(o->output_dir);
    run_folder_clean(o->output_dir);
    if (o->resume && !run_folder_has(o->output_dir, o->resume)) json_object_del(t->state, "checkpoints");
    if (o->resume) trainer_limit_states(t);
}

/* The number of steps of a resumed run that --early-stopping-patience had ended, or `steps`. */
static inline int64_t trainer_steps_left(Trainer *t, int64_t steps) {
    const int64_t patience = t->o->best.patience, waited = state_int(json_object_get(t->state, "best"), "waited");
    if (!t->o->resume || !patience || waited < patience || t->step >= steps) return steps;
    metrics_line(&t->metrics,
                 "%s: the run had ended at step %lld, by --early-stopping-patience: nothing is left to train",
                 t->o->resume, (long long)t->step);
    return t->step;
}

/* Begins a run of this many steps: prepares its folder and sets up the learning-rate schedule. */
static inline void trainer_schedule(Trainer *t, int64_t steps) {
    trainer_begin_folder(t);
    t->steps = trainer_steps_left(t, steps);
    t->schedule = (Schedule){.kind = (ScheduleKind)t->o->schedule,
                             .steps = steps,
                             .min = t->o->min_lr_rate,
                             .warmup = schedule_steps(t->o->warmup, steps),
                             .decay = schedule_steps(t->o->decay, steps),
                             .decay_kind = (DecayKind)t->o->decay_kind};
    if (t->o->resume && t->step > steps)
        die("%s: the state is at step %lld, and the run of %lld steps has reached its end already; raise --max-steps or "
            "--num-train-epochs",
            t->o->resume, (long long)t->step, (long long)steps);
    if (t->o->resume && t->step == steps)
        metrics_line(&t->metrics, "%s: the run had reached its last step, %lld: nothing is left to train", t->o->resume,
                     (long long)steps);
}

/* Warns if a step takes all of the data, so that the epochs are as few steps. most: steps of the run that are so few;
 * option: what sets the size of a step. Call it after trainer_schedule(). */
static inline void trainer_check_steps(const Trainer *t, double most, const char *option) {
    if (t->o->steps || (double)t->steps > ceil(most) || t->dist.rank) return;
    warn("all epochs are %lld optimizer step%s, each of which takes as much as the whole shard has; lower %s or raise "
         "--num-train-epochs",
         (long long)t->steps, PLURAL(t->steps), option);
}

static inline void trainer_begin_step(Trainer *t) {
    trainer_write_options(t);
    t->step_start = clock_seconds();
    t->flops = 0;
    metrics_phase(&t->metrics, RUN_TRAINING);
}

/* Time and FLOPs of a step that are not its own: validation, samples. */
typedef struct TrainerPause {
    double start, flops;
    RunPhase phase;
} TrainerPause;

/* Stops the clock of the step until trainer_go_on(); phase: what the time until then is spent on. */
static inline TrainerPause trainer_pause(Trainer *t, RunPhase phase) {
    return (TrainerPause){clock_seconds(), t->flops, metrics_phase(&t->metrics, phase)};
}

static inline void trainer_go_on(Trainer *t, TrainerPause p) {
    t->step_start += clock_seconds() - p.start;
    t->flops = p.flops;
    metrics_phase(&t->metrics, p.phase);
}

/* One optimizer step with the gradients accumulated on all ranks. loss: the sum over all ranks. If the loss or the
 * gradient is not finite, the step is skipped and counted; too many skipped steps end the run. Collective. */
static inline void trainer_update(Trainer *t, double loss) {
    Error e;
    if (t->dist.ranks > 1 && !t->grads.begun) die("this trainer cannot distribute its work over ranks; start one rank");
    if (!model_sync(&t->model, &e)) die("%s", e.text);
    t->learning_rate = t->o->learning_rate * schedule_at(&t->schedule, t->step);
    t->last_bad = !isfinite(loss);
    dist_grads_settle(&t->grads); /* the weights change after it */
    t->intact = false;
    if (t->last_bad) {
        dist_grads_discard(&t->grads);
        t->update = (OptimizerResult){.grad_norm = NAN, .skipped = true};
    } else t->update = dist_grads_update(&t->grads, t->learning_rate);
    t->step++;
    if (!t->update.skipped) return;
    t->bad_steps++;
    metrics_warn(&t->metrics, "step %lld: %s is not finite; the step was skipped (%lld so far)", (long long)t->step,
                 t->last_bad ? "the loss" : "the gradient", (long long)t->bad_steps);
    if (t->bad_steps > t->o->max_bad_steps)
        die("step %lld: %lld steps were skipped for NaN or infinity, --max-bad-steps allows %lld", (long long)t->step,
            (long long)t->bad_steps, (long long)t->o->max_bad_steps);
}

/* Notes a failure that ends the run at the next trainer_should_stop(), after the state is written. */
static inline void trainer_later(Trainer *t, const Error *e) {
    if (!t->broken.text[0]) t->broken = *e;
}

/* Ends the step: sets the common metrics, writes the record, prints the line (format: the method's own part of it) and
 * updates the progress line. Collective. */
PRINTF_LIKE(3, 4) static inline void trainer_log(Trainer *t, double loss, const char *format, ...) {
    Error e;
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    metrics_drop_nan(text);
    if (isnan(loss)) loss = NAN; /* without a sign */
    const double flops = dist_total(&t->dist, t->flops);
    const double seconds = clock_seconds() - t->step_start, speed = flops / seconds;
    if (speed > t->peak) t->peak = speed; /* the machine was slower while the peak was measured */
    const double peak = speed / t->peak;
    Metrics *m = &t->metrics;
    metrics_set(m, "loss", loss);
    metrics_set(m, "grad_norm", t->update.grad_norm);
    metrics_set(m, "learning_rate", t->learning_rate);
    metrics_set(m, "num_tokens", (double)t->tokens);
    metrics_set(m, "num_trained_tokens", (double)t->trained);
    metrics_set(m, "step_time", seconds);
    metrics_set(m, "perf/share_of_peak", peak);
    char mfu[24] = "";
    if (t->nominal_peak > 0) {
        metrics_set(m, "perf/mfu", flops / seconds / t->nominal_peak);
        snprintf(mfu, sizeof mfu, ", MFU %.1f%%", 100 * flops / seconds / t->nominal_peak);
    }
    if (t->bad_steps) metrics_set(m, "grad/nan_count", (double)t->bad_steps);
    const bool last = t->step == t->steps;
    if (!t->broken.text[0] && !metrics_step(m, t->step, &e)) trainer_later(t, &e);
    if (last || (!t->o->quiet && t->step % t->o->logging_steps == 0))
        metrics_notice(m, "step %5lld/%lld | loss %8.4f%s%s | norm %.3f | lr %.2e | %.0f ms | %.0f%% of peak%s",
                       (long long)t->step, (long long)t->steps, loss, text[0] ? " | " : "", text, t->update.grad_norm,
                       t->learning_rate, 1e3 * seconds, 100 * peak, mfu);
    metrics_progress(m, t->step, t->steps, text);
}

enum { TRAINER_PAIRS = 8 }; /* pairs, or solutions, that are scored for the report */

/* Adds a pair with the model's scores of both answers to the samples and to the report, if trainer_records(). when: "before" or "after". */
static inline void trainer_show_pair(Trainer *t, const char *when, const Pair *p, double chosen, double rejected) {
    char *prompt = model_text_decode(&t->text, p->prompt, p->prompt_len, true);
    char *better = model_text_decode(&t->text, p->chosen, p->chosen_len, true);
    char *worse = model_text_decode(&t->text, p->rejected, p->rejected_len, true);
    metrics_pair(&t->metrics, when, prompt, better, worse, chosen, rejected);
    free(prompt), free(better), free(worse);
}

/* Adds a labelled solution with the model's scores to the samples and to the report, if trainer_records(). score: (labels)
 * of each step; when: as in trainer_show_pair(). */
static inline void trainer_show_solution(Trainer *t, const char *when, const Example *x, const float *score) {
    json_t *steps = json_array();
    char *prompt = model_text_decode(&t->text, x->prompt, x->prompt_len, true);
    for (int32_t k = 0, from = 0; k < x->labels; k++) {
        char *text = model_text_decode(&t->text, x->completion + from, x->at[k] + 1 - from, true);
        from = x->at[k] + 1;
        json_array_append_new(steps, json_pack("{s:o, s:f, s:o}", "text", json_utf8(text, strlen(text)), "label",
                                               step_share(x->label[k]), "score", json_finite((double)score[k])));
        free(text);
    }
    metrics_solution(&t->metrics, when, prompt, steps);
    free(prompt);
}

/* Sets the counters of the state. */
static inline void trainer_set_counters(Trainer *t) {
    json_object_set_new(t->state, "stage", json_string(t->program));
    json_object_set_new(t->state, "step", json_integer(t->step));
    json_object_set_new(t->state, "bad_steps", json_integer(t->bad_steps));
    json_object_set_new(t->state, "tokens", json_integer(t->intact_tokens));
    json_object_set_new(t->state, "trained_tokens", json_integer(t->intact_trained));
    json_object_set_new(t->state, "optimizer_step", json_integer(t->optimizer.step));
}

/* Writes the training state to `path`, on a single rank. */
static inline bool trainer_write_state(Trainer *t, const char *path, Error *e) {
    const RunPhase phase = metrics_phase(&t->metrics, RUN_SAVING);
    trainer_set_counters(t);
    trainer_list_state(t);
    if (!companion_save(&t->companion, path, t->step, true, e)) return false;
    char *text = json_dumps(t->state, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    const bool ok = model_save(&t->model, &t->file, path, MODEL_FLOAT32, &t->optimizer, text, e);
    if (ok) metrics_line(&t->metrics, "state written to %s", path);
    free(text);
    if (ok) companion_forget(&t->companion, true);
    if (ok) trainer_limit_states(t);
    metrics_phase(&t->metrics, phase);
    return ok;
}

/* Writes the training state to `path`. --resume continues from it as if the run had not been interrupted, on any number
 * of ranks. False if it cannot be written; only rank 0 notices. Collective. */
static inline bool trainer_save_state(Trainer *t, const char *path, Error *why) {
    Error e;
    if (!t->dist.rank) {
        const bool ok = trainer_write_state(t, path, why);
        if (!ok && dist_any_lost(&t->dist)) dist_failed(&t->dist, why); /* the moments of a rank, not the file */
        return ok;
    }
    companion_save(&t->companion, path, t->step, false, &e);
    trainer_set_counters(t);
    if (!model_save_beside(&t->model, &t->optimizer, &e)) dist_failed(&t->dist, &e);
    companion_forget(&t->companion, false);
    return true;
}

/* Ends the run on all ranks if `ok` is false on any of them, after the state of the last step is written; e: the reason
 * on this rank. Collective. */
static inline void trainer_require(Trainer *t, bool ok, const Error *e) {
    const int ranks = t->dist.ranks;
    if (!dist_any(&t->dist, !ok)) return;
    char *path = t->intact && t->step ? trainer_state_path(t->o, t->step) : NULL;
    Error *all = (Error *)xcalloc((size_t)ranks, sizeof *all), mine = {""};
    if (!ok) mine = *e;
    dist_exchange(&t->dist, &mine, all, sizeof mine);
    if (path && !trainer_save_state(t, path, &mine)) metrics_line(&t->metrics, "no state is written: %s", mine.text);
    if (t->dist.rank) pause(); /* the launcher ends this rank */
    metrics_clear(&t->metrics);
    for (int r = 0; r < ranks; r++)
        if (all[r].text[0]) die(r ? "%s (rank %d)" : "%s", all[r].text, r);
    exit(1);
}

/* Call it wherever a run may be resumed; steps: optimizer steps since the last call. Writes the state when --save-steps
 * is due, when a signal asked any rank to stop, or before the run ends because of trainer_later(). Returns true if the
 * run must stop. Collective. */
static inline bool trainer_should_stop(Trainer *t, int64_t steps) {
    Error e;
    trainer_settled(t);
    const bool stopping = dist_any(&t->dist, program_stopping());
    const int64_t every = t->o->save_steps;
    trainer_require(t, !t->broken.text[0], &t->broken);
    if (!stopping && !(every && t->step / every > (t->step - steps) / every)) return false;
    char *path = trainer_state_path(t->o, t->step);
    if (path && !trainer_save_state(t, path, &e)) die("%s", e.text);
    if (!path) warn("no state is written: give --state FILE");
    if (stopping)
        metrics_notice(&t->metrics, "stopped by a signal after step %lld%s", (long long)t->step,
                       path ? "; continue with --resume" : "");
    free(path);
    return stopping;
}

/* Writes the model; a failure ends the run at the next trainer_should_stop() or trainer_close(). */
static inline void trainer_save_model(Trainer *t, const char *path) {
    Error e;
    if (t->dist.rank) return;
    const RunPhase phase = metrics_phase(&t->metrics, RUN_SAVING);
    if (!model_save(&t->model, &t->file, path, (ModelDtype)t->o->output_dtype, NULL, NULL, &e)) trainer_later(t, &e);
    metrics_phase(&t->metrics, phase);
}

/* The full name of the metric that evaluations are compared by, or NULL if this one has not set it. */
static inline const char *trainer_best_metric(const Trainer *t) {
    static const char *const usual[] = {"eval_loss", "eval_accuracy", "eval_reward"};
    const char *name = t->o->best.metric;
    const Metrics *m = &t->metrics;
    for (int k = 0; !name && k < 3; k++)
        for (size_t i = 0; i < m->count; i++)
            if (!strcmp(m->names[i], usual[k])) return usual[k];
    for (size_t i = 0; name && i < m->count; i++) {
        if (strncmp(m->names[i], "eval_", 5)) continue;
        if (!strcmp(m->names[i], name) || !strcmp(m->names[i] + 5, name)) return m->names[i];
    }
    return NULL;
}

/* Finds the metric that evaluations are compared by, after the first one. False with the names of all if there is none. */
static inline bool trainer_find_metric(Trainer *t, Error *e) {
    if (t->best.metric) return true;
    const char *name = trainer_best_metric(t);
    if (name) {
        best_model_name(&t->best, name);
        best_model_resume(&t->best, t->state);
        return true;
    }
    TextBuffer all = {0};
    for (size_t i = 0; i < t->metrics.count; i++)
        if (!strncmp(t->metrics.names[i], "eval_", 5))
            text_format(&all, "%s%s", all.length ? ", " : "", t->metrics.names[i]);
    error_set(e, "--metric-for-best-model %s: the evaluation has no such metric; it has %s",
              t->o->best.metric ? t->o->best.metric : "", all.length ? all.text : "none");
    text_free(&all);
    return false;
}

/* Call it after the evaluation before the first step: ends the program if --metric-for-best-model is none of its
 * metrics. */
static inline void trainer_check_metric(Trainer *t) {
    Error e;
    if ((t->o->best.file || t->o->best.patience) && !trainer_find_metric(t, &e)) die("%s", e.text);
}

/* Compares an evaluation with those before, and ends the run after this step if --early-stopping-patience says so. Returns
 * true if the model is the best so far and is to be written to --best. */
static inline bool trainer_improved(Trainer *t) {
    Error e;
    BestModel *b = &t->best;
    if (!t->o->best.file && !t->o->best.patience) return false;
    if (!trainer_find_metric(t, &e)) {
        trainer_later(t, &e);
        return false;
    }
    double value = NAN;
    for (size_t i = 0; i < t->metrics.count; i++)
        if (!strcmp(t->metrics.names[i], b->metric)) value = t->metrics.values[i];
    const bool best = best_model_update(b, t->step, value);
    best_model_save(b, t->state);
    if (best_model_over(b) && t->step < t->steps) {
        t->steps = t->step;
        metrics_notice(
            &t->metrics, "ended after step %lld: %lld evaluation%s without a better %s than %.4f, of step %lld",
            (long long)t->step, (long long)b->waited, PLURAL(b->waited), b->metric, b->value, (long long)b->step);
    }
    return best && t->o->best.file;
}

/* Call it after every evaluation but the one before the first step, with its metrics set: writes the model if it is the
 * best, and ends the run after this step if --early-stopping-patience says so. */
static inline void trainer_evaluated(Trainer *t) {
    const TrainerPause pause = trainer_pause(t, RUN_SAVING);
    if (trainer_improved(t)) trainer_save_model(t, t->o->best.file);
    trainer_go_on(t, pause);
}

/* Writes the model, unless a signal has stopped the run. If that fails, the run ends with its state. trainer_close()
 * calls it, too; a trainer with a companion calls it before it closes the companion's model. Collective. */
static inline void trainer_write(Trainer *t, bool stopped) {
    Error e;
    if (t->written) return;
    t->written = true;
    trainer_write_options(t); /* of a resumed run without a step */
    if (!stopped && t->o->output) trainer_save_model(t, t->o->output);
    if (!stopped && t->o->adapter_output && !t->dist.rank &&
        !peft_write(&t->model, t->o->adapter_output, t->o->checkpoint, &e))
        trainer_later(t, &e);
    trainer_require(t, !t->broken.text[0], &t->broken);
}

/* Ends the run and writes the model. stopped: a signal ended the run; then no model is written. Collective. */
static inline void trainer_close(Trainer *t, bool stopped) {
    Error e;
    char a[16], b[16];
    trainer_write(t, stopped);
    const bool apart = t->backend->memory_peak != NULL;
    const size_t peak = apart ? t->backend->memory_peak(t->device) : program_peak_memory();
    metrics_line(&t->metrics, "peak %s %s, predicted %s", apart ? "GPU memory" : "memory", program_bytes(a, peak),
                 program_bytes(b, t->predicted));
    metrics_result(&t->metrics, apart ? "peak_gpu_memory" : "peak_memory", json_integer((json_int_t)peak));
    if (stopped) t->metrics.status = "stopped";
    *trainer_open_run() = NULL;
    if (!metrics_close(&t->metrics, &e)) die("%s", e.text);
    dist_total(&t->dist, 0); /* no rank leaves before everything is written */
    dist_grads_close(&t->grads);
    optimizer_free(&t->optimizer, &t->model);
    model_free(&t->model);
    model_text_close(&t->text);
    model_file_free(&t->file);
    companion_free(&t->companion);
    best_model_free(&t->best);
    json_decref(t->state), json_decref(t->clusters);
    dist_close(&t->dist);
    t->backend->close(t->device);
}

#endif
