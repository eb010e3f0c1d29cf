/* inference.h - options, model, tokenizer, sampling settings and data files of the programs that do not train.
 *
 *     static struct { InferenceOptions m; SamplingOptions s; } o;
 *     static const Option options[] = {INFERENCE_MODEL_OPTIONS(o.m), SAMPLING_OPTIONS(o.s), OPTION_END};
 *     Inference x;
 *     inference_open(&x, &o.m, o.s.seed, NULL);
 *     Sampling how = inference_sampling(&x, &o.s);
 *     inference_close(&x);
 *
 * A model's tokenizer and chat template come from --tokenizer and --chat-template, else from the model file, else from
 * the shard that the model is run on. A tokenizer that does not fit the model or the shard is an error. Errors in
 * opening end the program with one line on standard error.
 */
#ifndef LLMC_ROLLOUT_INFERENCE_H
#define LLMC_ROLLOUT_INFERENCE_H

#include "../base/error.h"           /* die, Error, usage_error, warn, ... */
#include "../base/file_kind.h"       /* MAGIC_RECORDS */
#include "../base/io.h"              /* Reader, writer_write, Writer, reader_close, ... */
#include "../base/json_text.h"       /* json_dump_short, json_utf8 */
#include "../base/options.h"         /* OPTION_TEXT, OPTION_GROUP, OPTION_INT, OPTION_CHOICE, ... */
#include "../base/random.h"          /* RANDOM_ROLLOUT */
#include "../device.h"               /* DeviceKind, DEVICE_OPTIONS, backend_open, device_dtype */
#include "../model/backend.h"        /* Backend, Device, Dtype */
#include "../model/model.h"          /* Model, model_free, model_held_bytes */
#include "../model/model_file.h"     /* model_load_as */
#include "../model/model_fits.h"     /* FitSide, fit_model, model_fits, model_fits_policy */
#include "../model/model_load.h"     /* ModelFile, ModelLoad, QUANTIZE_CHOICES, Quantize, ... */
#include "../model/model_text.h"     /* ModelText, model_text_close, model_text_decode_bytes, model_text_open */
#include "../records/shard.h"        /* Shard, Record */
#include "../records/shard_fits.h"   /* fit_shard */
#include "../records/tokens.h"       /* tokens_magic */
#include "../text/chat.h"            /* ChatTemplate, chat_template_free, chat_template_parse */
#include "../text/tokenizer.h"       /* Tokenizer, tokenizer_free, tokenizer_store */
#include "../text/tokenizer_files.h" /* tokenizer_open */
#include "rollout.h"                 /* Sampling, Completion, ROLLOUT_SAMPLING_OPTIONS, sampling_add_stops, ... */
#include "stop_text.h"               /* stop_text_cut */

typedef struct InferenceOptions {
    const char *checkpoint, *tokenizer, *chat_template, *adapter;
    int device, dtype;
    int quantize; /* a Quantize */
} InferenceOptions;

typedef struct SamplingOptions {
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k, max_new, seed, slots;
    OptionList stop;
} SamplingOptions;

// clang-format off
#define INFERENCE_MODEL_OPTIONS(o)                                                                                     \
    OPTION_GROUP("Model"),                                                                                             \
    OPTION_TEXT("checkpoint",    'c', &(o).checkpoint,    "FILE", "the model; - is standard input"),                   \
    OPTION_TEXT("adapter",       0,   &(o).adapter,       "DIR",  "add the adapters in this folder (peft's format)"),  \
    OPTION_CHOICE("quantize",    0,   &(o).quantize,      QUANTIZE_CHOICES,                                            \
                "hold matrices in blocks of 8 bits, or linear layers in 4; keep: as a folder or GGUF has them"),       \
    OPTION_TEXT("tokenizer",     't', &(o).tokenizer,     "SPEC",                                                      \
                "instead of the model's: bytes, tokenizer.json, vocab.json:merges.txt or their directory"),            \
    OPTION_TEXT("chat-template", 0,   &(o).chat_template, "SPEC",                                                      \
                "instead of the model's: chatml, llama, nanochat, plain, or the text of a template"),                   \
    DEVICE_OPTIONS(o)

#define SAMPLING_OPTIONS(o)                                                                                            \
    OPTION_GROUP("Sampling"),                                                                                          \
    OPTION_INT ("max-new-tokens", 'g', &(o).max_new, 1, 1 << 20, "maximum tokens per completion"),                     \
    ROLLOUT_SAMPLING_OPTIONS(o, 0, "sampling temperature; 0 is greedy"),                                               \
    OPTION_INT ("seed",           0,   &(o).seed,    0, 9007199254740992.0, "random seed")
// clang-format on

static inline SamplingOptions sampling_options(double temperature, int64_t max_new) {
    return (SamplingOptions){
        .temperature = temperature, .top_p = 1, .repetition_penalty = 1, .max_new = max_new, .seed = 42, .slots = 64};
}

/* Rejects options of sampling if nothing is drawn at random. why: follows the option's name in the message. */
static inline void sampling_refuse_unused(const SamplingOptions *o, const Option *table, bool drawn, const char *why) {
    const OptionUse use[] = {{&o->top_k, drawn, why}, {&o->top_p, drawn, why}, {&o->min_p, drawn, why}};
    options_refuse_unused(table, use, sizeof use / sizeof *use);
}

typedef struct Inference {
    const char *name; /* the model's, for messages */
    const Backend *backend;
    Device *device;
    Model model;
    ModelFile file;
    ModelText text;
} Inference;

/* Opens the tokenizer and the chat template. Those of the options replace the model's; those of the data are used if
 * the model has none. */
static inline void inference_text(Inference *x, const InferenceOptions *o, const Shard *data) {
    Error e;
    if (o->chat_template) {
        ChatTemplate c;
        if (!chat_template_parse(&c, o->chat_template, &e)) usage_error("--chat-template: %s", e.text);
        chat_template_free(&c);
    }
    if (o->tokenizer) {
        Tokenizer t;
        if (!tokenizer_open(&t, o->tokenizer, &e)) die("--tokenizer %s", e.text);
        free(x->file.tokenizer);
        if (!tokenizer_store(&t, &x->file.tokenizer, &x->file.tokenizer_bytes, &e)) die("--tokenizer %s", e.text);
        tokenizer_free(&t);
    }
    if (data && data->tokenizer_bytes) {
        const size_t n = data->tokenizer_bytes;
        if (!x->file.tokenizer) {
            x->file.tokenizer = xmalloc(n);
            x->file.tokenizer_bytes = n;
            memcpy(x->file.tokenizer, data->tokenizer, n);
        }
    }
    if (o->chat_template || (data && data->chat_template[0] && !x->file.chat_template)) {
        free(x->file.chat_template);
        x->file.chat_template = xstrdup(o->chat_template ? o->chat_template : data->chat_template);
    }
    if (data) {
        Error note = {0};
        const FitSide side = fit_model(x->name, &x->model.config, &x->file), other = fit_shard(data);
        if (!model_fits(&side, &other, 0, &note, &e)) die("%s", e.text);
        if (note.text[0]) warn("%s", note.text);
    }
    if (!model_text_open(&x->text, &x->file, x->name, &e)) die("%s", e.text);
    if (x->text.present && x->text.tokenizer.vocab > x->model.config.vocab)
        die("%s: a tokenizer of %d tokens does not fit the model's vocabulary of %d",
            o->tokenizer ? o->tokenizer : x->name, x->text.tokenizer.vocab, x->model.config.vocab);
}

/* Opens the device of the options, for a program that runs another model than theirs. Errors end the program. */
static inline void inference_device(Inference *x, InferenceOptions *o) {
    Error e;
    o->dtype = device_dtype((DeviceKind)o->device, o->dtype);
    if (!backend_open((DeviceKind)o->device, (Dtype)o->dtype, &x->backend, &x->device, &e)) die("%s", e.text);
}

/* Loads the model. seed: of the random weights if the model is a descriptor such as d12. data: the record shard that it
 * will be run on, or NULL. Errors end the program. */
static inline void inference_open(Inference *x, InferenceOptions *o, int64_t seed, const Shard *data) {
    Error e;
    *x = (Inference){.name = strcmp(o->checkpoint, "-") ? o->checkpoint : "standard input"};
    inference_device(x, o);
    const ModelLoad how = {.adapter = o->adapter, .quantize = (Quantize)o->quantize, .seed = (uint64_t)seed};
    if (!model_load_as(&x->model, &x->file, o->checkpoint, &how, x->backend, x->device, NULL, &e)) die("%s", e.text);
    if (x->file.note) warn("%s", x->file.note);
    if (!model_fits_policy(&x->file, x->name, &e)) warn("%s", e.text);
    inference_text(x, o, data);
}

/* Limits the number of threads to 1 + (weights / 8 MB) (1 + sequences / 16), the number that decoding this many
 * sequences at once can use. A small model is as fast on one thread, and then never waits for a busy core. */
static inline void inference_few_threads(const Inference *x, int sequences) {
    const double bytes = (double)model_held_bytes(&x->model);
    const double useful = 1 + bytes / (8 << 20) * (1 + sequences / 16.0);
    if (useful < omp_get_max_threads()) omp_set_num_threads((int)useful);
}

static inline void inference_close(Inference *x) {
    model_free(&x->model);
    model_text_close(&x->text);
    model_file_free(&x->file);
    x->backend->close(x->device);
}

/* Ends the program if the model has no tokenizer. */
static inline void inference_need_tokenizer(const Inference *x) {
    if (!x->text.present) die("%s: the model has no tokenizer; give one with --tokenizer", x->name);
}

/* The sampling settings of the options. A completion ends at the tokens of model_text_open() and at those and the texts
 * of --stop. */
static inline Sampling inference_sampling(const Inference *x, const SamplingOptions *o) {
    Error e;
    if (o->temperature > 0 && o->temperature < 0.01)
        usage_error("--temperature: %g is neither 0 (greedy) nor in [0.01, 100]", o->temperature);
    Sampling s = {.temperature = (float)o->temperature,
                  .top_p = (float)o->top_p,
                  .min_p = (float)o->min_p,
                  .top_k = (int)o->top_k,
                  .repetition_penalty = (float)o->repetition_penalty,
                  .max_new = (int)o->max_new,
                  .seed = (uint64_t)o->seed,
                  .stream = RANDOM_ROLLOUT};
    if (!sampling_add_stops(&s, &x->text.ends, &e)) die("%s: %s", x->name, e.text);
    if (!sampling_add_words(&s, &x->text, &o->stop, &e)) usage_error("--stop: %s", e.text);
    return s;
}

/* ---- data files ------------------------------------------------------------------------------------------------ */

/* A file of data: a shard that is about to be read, or the whole file in memory, decompressed. */
typedef struct DataFile {
    char *name;    /* for messages */
    int32_t magic; /* the first four bytes */
    Reader in;     /* at the first byte of a shard */
    char *bytes;   /* (n), followed by a NUL: a file that is not a shard; else NULL */
    size_t n;
} DataFile;

static inline bool data_file_is_shard(const DataFile *f) { return f->magic == MAGIC_RECORDS || tokens_magic(f->magic); }

static inline void data_file_close(DataFile *f) {
    reader_close(&f->in);
    free(f->name), free(f->bytes);
    *f = (DataFile){.in.fd = -1};
}

/* Opens a file and reads it whole, unless it is a shard. */
static inline bool data_file_open(DataFile *f, const char *path, Error *e) {
    bool failed = false;
    *f = (DataFile){.in.fd = -1};
    if (!reader_open(&f->in, path, e)) return false;
    f->name = xstrdup(f->in.name);
    if (reader_peek(&f->in, &f->magic, sizeof f->magic, &failed, e) < sizeof f->magic) f->magic = 0;
    if (!failed && data_file_is_shard(f)) return true;
    if (!failed && (f->bytes = reader_rest(&f->in, SIZE_MAX / 4, &f->n, e))) return true;
    data_file_close(f);
    return false;
}

/* Opens a reader of the bytes of a file that is not a shard, with the file's name. */
static inline bool data_file_reader(const DataFile *f, Reader *r, Error *e) {
    if (!reader_memory(r, f->bytes, f->n, e)) return false;
    free(r->name);
    r->name = xstrdup(f->name);
    return true;
}

/* ---- text as JSON ---------------------------------------------------------------------------------------------- */

/* The text of the tokens as a JSON string, without `cut` bytes at its end; their ids if there is no tokenizer. */
static inline json_t *inference_json_tokens(const Inference *x, const int32_t *ids, int32_t n, bool specials,
                                            size_t cut) {
    size_t length;
    char *text = model_text_decode_bytes(&x->text, ids, n, specials, &length);
    json_t *value = json_utf8(text, length - (cut < length ? cut : length));
    free(text);
    return value;
}

/* The same for the whole text. */
static inline json_t *inference_json_text(const Inference *x, const int32_t *ids, int32_t n, bool specials) {
    return inference_json_tokens(x, ids, n, specials, 0);
}

/* The text of a completion (of several turns: of the last one) as a JSON string, without the stop token or the stop text
 * that ended it. */
static inline json_t *inference_completion_text(const Inference *x, const Sampling *how, const Completion *c) {
    const int32_t first = c->trajectory ? c->trajectory->first : 0, n = c->count - first;
    const bool token = c->finished && sampling_is_stop(how, c->tokens[c->count - 1]);
    const size_t cut = c->finished && !token ? stop_text_cut(&how->texts, c->tokens + first, n) : 0;
    return inference_json_tokens(x, c->tokens + first, n - token, false, cut);
}

/* A prompt record as a row of JSON: its prompt, task and answer, and its other fields, among them the messages of a
 * prompt that is not a text. Fields whose names the programs use for a completion are kept in the field `fields`. */
static inline json_t *inference_prompt_row(const Inference *x, const Record *r) {
    static const char *const own[] = {"prompt",   "task",    "answer", "index",  "sample",  "completion", "tokens",
                                      "finished", "logprob", "right",  "reward", "rewards", "fields"};
    json_t *row = json_object(), *fields = *r->fields ? json_loads(r->fields, JSON_ALLOW_NUL, NULL) : NULL,
           *nested = json_object();
    const char *key;
    json_t *value;
    json_object_set_new(row, "prompt",
                        *r->text ? json_string(r->text) : inference_json_text(x, r->tokens, r->count, true));
    if (*r->task) json_object_set_new(row, "task", json_string(r->task));
    if (*r->answer) json_object_set_new(row, "answer", json_string(r->answer));
    json_object_foreach(fields, key, value) {
        bool taken = false;
        for (size_t i = 0; i < sizeof own / sizeof *own; i++) taken = taken || !strcmp(key, own[i]);
        json_object_set(taken ? nested : row, key, value);
    }
    if (json_object_size(nested)) json_object_set(row, "fields", nested);
    json_decref(nested);
    json_decref(fields);
    return row;
}

/* Writes a JSON object as one line. */
static inline bool json_line(Writer *w, const json_t *row, Error *e) {
    char *line = json_dump_short(row, JSON_COMPACT);
    const bool ok = writer_write(w, line, strlen(line), e) && writer_write(w, "\n", 1, e);
    free(line);
    return ok;
}

#endif
