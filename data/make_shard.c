/* make_shard.c - converter from JSONL or plain text to shards for the trainers; rows.h lists the line formats.
 *
 * Reads the inputs, converts each line to a record (row_batch.h: several threads do), assigns it to the training or the
 * validation split, and writes both shards at the end. After a failure no file is left behind. Unusual properties of the
 * data are counted and reported at the end.
 */
#include "../llmc/base/error.h"           /* Error, usage_error, die, warn, ... */
#include "../llmc/base/io.h"              /* XXH3_64bits */
#include "../llmc/base/jsonl.h"           /* Jsonl, jsonl_peek, jsonl_skip, jsonl_close, ... */
#include "../llmc/base/options.h"         /* OPTION_TEXT, OPTION_INT, OPTION_FLAG, OPTION_GROUP, ... */
#include "../llmc/base/output.h"          /* output_add, OUTPUT_WRITTEN, output_distinct, OUTPUT_READ, ... */
#include "../llmc/base/text.h"            /* TokenList, token_list_free, TextBuffer, token_list_append, ... */
#include "../llmc/model/model_file.h"     /* model_read_texts */
#include "../llmc/model/model_load.h"     /* ModelFile, model_file_free */
#include "../llmc/records/clusters.h"     /* clusters_add, clusters_new, CLUSTERS_MAX */
#include "../llmc/records/cursor.h"       /* cursor_taken */
#include "../llmc/records/inputs.h"       /* Inputs, inputs_add, inputs_close */
#include "../llmc/records/mix.h"          /* MIX_FIRST, MIX_STEPS, MIX_TEMPERATURE, Mix, ... */
#include "../llmc/records/mix_options.h"  /* MIXING_OPTIONS, MixingOptions, mix_options_config, ... */
#include "../llmc/records/shard.h"        /* RecordKind, record_kind_name, Record, ShardWriter, ... */
#include "../llmc/records/tokens.h"       /* TokenMeaning, tokens_write */
#include "../llmc/reward/verify.h"        /* verify_kind */
#include "../llmc/text/chat.h"            /* chat_template_parse, ChatTemplate, chat_add_specials, ... */
#include "../llmc/text/jinja_chat.h"      /* JINJA_CHAT_DATE, jinja_chat_open, jinja_chat_stop */
#include "../llmc/text/tokenizer.h"       /* tokenizer_store, Tokenizer, tokenizer_load, tokenizer_token */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open */
#include "row_batch.h"                    /* RowMade, RowBatch, ROW_BATCH_ALONE, row_batch_clear, ... */
#include "row_fields.h"                   /* ROW_TEXT, row_field, FIELD_PROMPT, FIELD_COUNT, ... */
#include "rows.h"                         /* NOTE_COUNT, NOTE_TRUNCATED, ROW_BAD, RowNote, ... */
#include "super_ni.h"                     /* SuperNi */
#include "wordings.h"                     /* WORDINGS_PER_ROW_MAX, Wordings, wordings_close, wordings_open */
#include <ctype.h>
#include <signal.h>

static struct {
    OptionList inputs, hold_out;
    const char *output, *val_output, *tokenizer, *template, *separator, *template_path, *template_kwargs, *date, *model;
    int kind, truncation;
    const char *wordings;
    int64_t max_tokens, limit, seed, wordings_per_row;
    SuperNi super_ni;
    double val_fraction;
    bool skip_bad, quiet, assistant_only, help_fields;
    MixingOptions mix;
} o = {.template = "auto",
       .assistant_only = true,
       .wordings_per_row = 1,
       .super_ni = {.positive = 2},
       .mix = {.temperature = 2}};

static Inputs inputs;        /* the files of --input and --mix */
static bool mixes;           /* the training records are a mixture of the files */
static int64_t *made;        /* (inputs.count) training records of each file, before they are mixed */
static char *model_template; /* of --model, or NULL */
/* Of --template, --chat-template-path or --model; without a spec if none is given. */
static ChatTemplate given_template;

static Rows rows = {.step_separator = "\\n"};
static RowWorkers workers;
static Wordings wordings;

/* An option that names a field. */
#define FIELD_OPTION(field, option, names, help, decides)                                                              \
    OPTION_TEXT(option, 0, &rows.fields.name[FIELD_##field], "NAME", help),

static const Option options[] = {
    OPTION_GROUP("Input and output"),
    OPTION_LIST(
        "input", 'i', &o.inputs, "FILE",
        "JSON lines, a JSON array or plain text, also .gz or .zst, or a pattern; - is standard input; may be repeated; "
        "FILE:3 gives it a weight, FILE:0.5x takes half of its records, FILE:2000n that many"),
    OPTION_TEXT("output", 'o', &o.output, "FILE", "shard to write; - is standard output, .zst compresses"),
    OPTION_CHOICE("kind", 0, &o.kind, "auto|chat|prompt|preference|step|unpaired|text",
                  "kind of shard; auto decides by the first line"),
    OPTION_REAL("val-fraction", 0, &o.val_fraction, 0, 1, "fraction of the records written to --val-output"),
    OPTION_TEXT("val-output", 0, &o.val_output, "FILE",
                "shard for held-out records; records with equal prompts stay together"),
    OPTION_LIST("hold-out", 0, &o.hold_out, "FIELD=NAME",
                "records whose FIELD is NAME, such as cluster=puzzles, go to --val-output, and none of them is trained "
                "on; may be repeated"),
    OPTION_INT("seed", 0, &o.seed, 0, 9007199254740992, "random seed of the split and of a mixture"),
    OPTION_INT("limit", 0, &o.limit, 0, 1e15,
               "maximum number of records; of a mixture, the number of training records; 0: no limit"),
    OPTION_FLAG("skip-bad", 0, &o.skip_bad, "count and skip invalid lines instead of stopping at the first"),
    OPTION_FLAG("quiet", 'q', &o.quiet, "print no summary, only warnings"),
    OPTION_GROUP("Mixture of several files"),
    MIXING_OPTIONS(o.mix),
    OPTION_GROUP("Tokens"),
    OPTION_TEXT("model", 0, &o.model, "FILE",
                "the model that will be trained on the shard: its tokenizer and chat template, unless they are given"),
    OPTION_TEXT("tokenizer", 't', &o.tokenizer, "SPEC",
                "bytes, a directory, tokenizer.json, or vocab.json:merges.txt; if unset, bytes"),
    OPTION_TEXT(
        "template", 0, &o.template, "SPEC",
        "chatml, llama, nanochat, plain or a custom template (see above); auto: the model's, else chatml for messages, else plain"),
    OPTION_TEXT(
        "chat-template-path", 0, &o.template_path, "PATH",
        "a model's folder, chat_template.jinja or tokenizer_config.json: its own template, instead of --template"),
    OPTION_TEXT("chat-template-kwargs", 0, &o.template_kwargs, "JSON",
                "variables of the model's template, such as {\"enable_thinking\": false}"),
    OPTION_TEXT("date", 0, &o.date, "YYYY-MM-DD",
                "date in the model's template, if it writes one; if unset, " JINJA_CHAT_DATE),
    OPTION_FLAG("assistant-only-loss", 0, &o.assistant_only,
                "train conversations on the assistant's messages only, not on all tokens"),
    OPTION_TEXT("system", 0, &rows.system, "TEXT", "system message for conversations without one"),
    OPTION_INT("max-tokens", 0, &o.max_tokens, 0, 1 << 30, "maximum tokens of a record; 0: no limit"),
    OPTION_CHOICE("truncation", 0, &o.truncation, "end|drop|error",
                  "truncate longer records at the end, drop them, or stop with an error"),
    OPTION_GROUP(
        "Fields of a row (a name, or a path such as reward.answer or turns.0.text; --help-fields: usual names)"),
    OPTION_FLAG("help-fields", 0, &o.help_fields, "print the names under which fields are read"),
    ROW_FIELDS(FIELD_OPTION)
        OPTION_TEXT("prompt-template", 0, &rows.fields.pattern[FIELD_PROMPT], "TEXT",
                    "prompt made of several fields, such as '{instruction}\\n{input}'; {{ is a brace"),
    OPTION_TEXT("completion-template", 0, &rows.fields.pattern[FIELD_COMPLETION], "TEXT",
                "completion made of several fields"),
    OPTION_TEXT("answer-template", 0, &rows.fields.pattern[FIELD_ANSWER], "TEXT", "answer made of several fields"),
    OPTION_TEXT("chosen-template", 0, &rows.fields.pattern[FIELD_CHOSEN], "TEXT", "chosen made of several fields"),
    OPTION_TEXT("rejected-template", 0, &rows.fields.pattern[FIELD_REJECTED], "TEXT",
                "rejected made of several fields"),
    OPTION_TEXT("text-template", 0, &rows.fields.pattern[FIELD_TEXT], "TEXT", "text made of several fields"),
    OPTION_TEXT("wordings", 0, &o.wordings, "FILE",
                "prompts, and completions, in several wordings, of which each row gets one at random: JSON lines of "
                "prompt, completion and the task of the rows that they are for"),
    OPTION_INT("wordings-per-row", 0, &o.wordings_per_row, 1, WORDINGS_PER_ROW_MAX,
               "number of different wordings that each row is written in, if there are as many"),
    OPTION_GROUP("Tasks of Super-NaturalInstructions"),
    OPTION_FLAG(
        "super-ni", 0, &o.super_ni.on,
        "read tasks with Definition, Positive Examples and Instances, a record for each instance, as Tk-Instruct "
        "encodes them; with --kind prompt, the outputs are the answers"),
    OPTION_INT("num-pos-examples", 0, &o.super_ni.positive, 0, 100, "positive examples in a prompt"),
    OPTION_INT("num-neg-examples", 0, &o.super_ni.negative, 0, 100, "negative examples in a prompt"),
    OPTION_FLAG("add-explanation", 0, &o.super_ni.explanation, "write the explanations of examples, too"),
    OPTION_INT("max-source-length", 0, &o.super_ni.max_source, 0, 1 << 30,
               "add examples only while the prompt has at most this many tokens; 0: no limit"),
    OPTION_INT("max-num-instances-per-task", 0, &o.super_ni.per_task, 0, 1e15,
               "number of instances of a task, drawn by the seed; 0: all"),
    OPTION_GROUP("Details (in these texts \\n and \\t are newline and tab)"),
    OPTION_TEXT("task", 0, &rows.task_name, "NAME", "verifier for lines without a task, such as gsm8k or exact"),
    OPTION_TEXT("answer-after", 0, &rows.answer_after, "TEXT",
                "keep only the part of an answer after the last TEXT, such as ####"),
    OPTION_TEXT("prompt-end", 0, &rows.prompt_end, "TEXT",
                "end of the prompt in chosen and rejected of lines without one; if unset, \\n\\nAssistant:"),
    OPTION_TEXT("step-separator", 0, &rows.step_separator, "TEXT", "text appended to each step"),
    OPTION_TEXT("separator", 0, &o.separator, "TEXT",
                "text that ends each document of a plain text file; if unset, a file is one document"),
    OPTION_END};

static const OptionAbout about = {
    "[options] -i FILE -o FILE",
    "Converts JSONL or plain text to a shard. A line of JSONL is one of\n"
    "\n"
    "  {\"messages\":[{\"role\":\"user\",\"content\":\"...\"}, ...]}   chat       train_sft\n"
    "  {\"prompt\":\"...\",\"completion\":\"...\"}                   chat\n"
    "  {\"prompt\":\"...\",\"answer\":\"...\",\"task\":\"...\"}          prompt     train_grpo, evaluate\n"
    "  {\"prompt\":\"...\",\"chosen\":\"...\",\"rejected\":\"...\"}      preference train_rm, train_dpo\n"
    "  {\"prompt\":\"...\",\"completions\":[...],\"labels\":[...]}   step       train_rm --kind prm\n"
    "  {\"prompt\":\"...\",\"completion\":\"...\",\"label\":true}      unpaired   train_rm --kind orm, KTO\n"
    "  {\"text\":\"...\"}                                        text       a token shard\n"
    "\n"
    "Other names of these fields, such as conversations, instruction, input and output, are listed by --help-fields. A\n"
    "prompt or a completion may also be a list of messages. If a preference has no prompt, the common beginning of\n"
    "chosen and rejected is used. Plain text, which does not begin with {, also becomes a token shard. Models are\n"
    "trained on the assistant's messages and on the token that ends each of them.\n"
    "\n"
    "With --chat-template-path, conversations are written by a model's own chat template, with their tools, tool_calls\n"
    "and reasoning_content, as transformers does. Special tokens are made only from the template, not from messages.\n"
    "\n"
    "A custom template gives the text around the {content} of {user}, {assistant}, {system} or {any} messages;\n"
    "{eos} is the end of text, <|...|> a special token:\n"
    "\n"
    "  --template '{any}<|im_start|>{role}\\n{content}<|im_end|>\\n'                   (this is chatml)\n"
    "  --template '{user}Question: {content}\\n{assistant}Answer: {content}{eos}'\n"
    "\n"
    "examples:\n"
    "  make_shard -i chats.jsonl -o chats.shard --max-tokens 1024 --val-fraction 0.05 --val-output held_out.shard\n"
    "  make_shard -i gsm8k.jsonl -o tasks.shard --prompt-field question --answer-field answer --task gsm8k\n"
    "  make_shard -i gsm8k.jsonl -o sft.shard --prompt-field question --completion-field answer\n"
    "  zcat hh.jsonl.gz | make_shard -i - -o pairs.shard --tokenizer gpt2/\n"
    "  make_shard -i prompts.jsonl -o prompts.shard --model sft.safetensors\n"
    "  make_shard -i chats.jsonl -o chats.shard --tokenizer Qwen3-0.6B --chat-template-path Qwen3-0.6B\n"
    "  make_shard -i 'tasks/*.json' -o ni.shard --super-ni --max-num-instances-per-task 100\n"
    "  make_shard -i book.txt -o book.bin --tokenizer vocab.json:merges.txt"};

/* ---- training and validation split ------------------------------------------------------------------------------ */

typedef struct Side {
    const char *path;
    bool open, fresh; /* fresh: no file of that name existed */
    ShardWriter shard;
    TokenList text;   /* kind text: tokens of all documents */
    TokenList trains; /* of a mixture: for each record the number of tokens that the mask selects */
    TokenList places; /* for each record the place of its cluster among `clusters`, or -1 */
    int64_t records, tokens, trained;
    int32_t longest;
} Side;

static Side sides[2]; /* training, validation */

static json_t *clusters; /* clusters.h: of all records */
static bool *held;       /* (o.hold_out.count) a row is of this cluster */

static void give_up(void) {
    for (int i = 0; i < 2; i++)
        if (sides[i].open) shard_abort(&sides[i].shard);
}

NORETURN static void fail(const Error *e) {
    give_up();
    die("%s", e->text);
}

/* Removes the temporary files, using only async-signal-safe calls. */
static void on_signal(int number) {
    for (int i = 0; i < 2; i++)
        if (sides[i].open && sides[i].shard.out.temporary) unlink(sides[i].shard.out.temporary);
    _exit(128 + number);
}

/* Blocks or unblocks signals in this thread; they are blocked while files are created or renamed. */
static void hold_signals(bool hold) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

/* Starts the threads. Only this one gets signals, which hold_signals() then blocks. */
static void open_workers(void) {
    Error e;
    if (!row_workers_open(&workers, &rows, &e)) die("%s", e.text);
#pragma omp parallel num_threads(workers.count)
    hold_signals(true);
    hold_signals(false);
}

static void open_sides(void) {
    Error e;
    void *blob = NULL;
    size_t n = 0;
    sides[0].path = o.output;
    sides[1].path = o.val_output;
    for (int i = 0; i < 2; i++) sides[i].fresh = sides[i].path && access(sides[i].path, F_OK);
    if (rows.kind == ROW_TEXT) return;
    if (!tokenizer_store(&rows.tokenizer, &blob, &n, &e)) die("%s", e.text);
    hold_signals(true);
    for (int i = 0; i < 2; i++) {
        if (!sides[i].path) continue;
        if (!shard_create(&sides[i].shard, sides[i].path, (RecordKind)rows.kind, rows.tokenizer.vocab, blob, n,
                          rows.chat.spec, &e))
            fail(&e);
        sides[i].open = true;
    }
    hold_signals(false);
    free(blob);
}

/* The name after "=" of value i of --hold-out. */
static const char *held_name(int i) { return strchr(o.hold_out.items[i], '=') + 1; }

/* Returns the split of a record: that of its cluster if it is held out, else a function of the hash of its prompt and the
 * seed, so that equal prompts share a split. */
static Side *choose_side(const RowMade *m) {
    if (!o.val_output) return &sides[0];
    for (int i = 0; m->cluster && i < o.hold_out.count; i++)
        if (!strcmp(m->cluster, held_name(i))) {
            held[i] = true;
            return &sides[1];
        }
    return &sides[(double)(m->key >> 11) * 0x1p-53 < o.val_fraction];
}

/* Ends the program if no record is of a cluster that is to be held out. */
static void check_held(void) {
    for (int i = 0; i < o.hold_out.count; i++)
        if (!held[i]) {
            give_up();
            die("--hold-out %s: no record is of this cluster", o.hold_out.items[i]);
        }
}

/* Notes of which cluster the next record is. */
static void add_cluster(Side *side, const RowMade *m) {
    Error e;
    const int place = m->cluster ? clusters_add(clusters, m->cluster) : -1;
    if (place == -2) {
        error_set(&e, "the records are of more than %d clusters; --cluster-field names another field", CLUSTERS_MAX);
        fail(&e);
    }
    token_list_append(&side->places, place);
}

/* Writes into the shard of which clusters its records are, if there are any. */
static void describe_clusters(Side *side) {
    const json_t *names = json_object_get(clusters, "clusters");
    if (!json_array_size(names)) return;
    json_t *own = clusters_new(json_string_value(json_object_get(clusters, "field")));
    for (int32_t i = 0; i < side->places.count; i++) {
        const int32_t place = side->places.ids[i];
        clusters_add(own, place < 0 ? NULL : json_string_value(json_array_get(names, (size_t)place)));
    }
    shard_describe(&side->shard, own);
    json_decref(own);
}

static void add_record(RowMade *m) {
    Error e;
    Side *side = choose_side(m);
    const Record *r = &m->record;
    side->records++;
    side->tokens += r->count;
    side->trained += m->trained;
    if (mixes) token_list_append(&side->trains, (int32_t)m->trained);
    if (r->count > side->longest) side->longest = r->count;
    if (rows.kind == ROW_TEXT) {
        if (!side->text.count) {
            const TokenList spare = side->text;
            side->text = (TokenList){m->record.tokens, m->record.count, m->record.count};
            m->record.tokens = spare.ids;
            return;
        }
        token_list_reserve(&side->text, (size_t)r->count);
        memcpy(side->text.ids + side->text.count, r->tokens, (size_t)r->count * sizeof *r->tokens);
        side->text.count += r->count;
        return;
    }
    add_cluster(side, m);
    if (!shard_add(&side->shard, r, &e)) fail(&e);
}

/* Replaces the training records by a mixture of the files. If a file has a weight, the mixture ends with the record that
 * completes the first file, so that none is there twice, unless the options say otherwise. */
static void arrange_mixture(void) {
    Error e;
    Mix m;
    MixConfig how = mix_options_config(&o.mix, &inputs);
    if (mix_weighted(&inputs) && !option_given(&o.mix.stop)) how.stop = MIX_FIRST;
    if (!mix_new(&m, &inputs, made, &how, (uint64_t)o.seed, &e)) fail(&e);
    const int64_t count = o.limit ? o.limit : m.length < m.limit ? m.length : m.limit;
    if (count > m.limit) {
        error_set(&e, "--limit %lld: the epochs in the list of --mix allow %lld records", (long long)count,
                  (long long)m.limit);
        fail(&e);
    }
    int64_t *record = (int64_t *)xmalloc((size_t)count * sizeof *record);
    Side *s = &sides[0];
    TokenList places = {0};
    s->trained = 0;
    for (int64_t i = 0; i < count; i++) {
        record[i] = mix_next(&m);
        s->trained += s->trains.ids[record[i]];
        token_list_append(&places, s->places.ids[record[i]]);
    }
    token_list_free(&s->places);
    s->places = places;
    shard_arrange(&s->shard, record, count);
    for (int k = 0; k < m.count && !o.quiet; k++)
        fprintf(stderr, "%s: mixture: %lld of the %lld records of %s, %.4g %%\n", program_invocation_short_name,
                (long long)cursor_taken(&m.file[k].cursor), (long long)made[k],
                inputs.label[k] ? inputs.label[k] : inputs.path[k], 100 * mix_file_share(&m, k));
    s->records = count;
    s->tokens = (int64_t)s->shard.total_tokens;
    s->longest = s->shard.longest;
    free(record);
    mix_free(&m);
}

static bool write_text(const Side *side, Error *e) {
    const Tokenizer *t = &rows.tokenizer;
    void *blob;
    size_t n;
    if (!tokenizer_store(t, &blob, &n, e)) return false;
    const TokenMeaning meaning = {t->vocab, t->add_bos ? t->bos : t->eos, XXH3_64bits(blob, n)};
    free(blob);
    return tokens_write(side->path, side->text.ids, (size_t)side->text.count, meaning, e);
}

static void commit(void) {
    Error e;
    hold_signals(true);
    for (int i = 1; i >= 0; i--) { /* the training shard last: if it exists, the output is complete */
        Side *s = &sides[i];
        if (!s->path) continue;
        s->open = false;
        if (rows.kind != ROW_TEXT) describe_clusters(s);
        if (rows.kind == ROW_TEXT ? write_text(s, &e) : shard_commit(&s->shard, &e)) continue;
        if (!i && sides[1].fresh) unlink(sides[1].path);
        fail(&e);
    }
}

/* ---- what the user should hear about the rows ------------------------------------------------------------------- */

/* Number of occurrences and place of the first. */
typedef struct Noted {
    int64_t count;
    char first[128];
} Noted;

static Noted noted[NOTE_COUNT];

static struct Unread {
    char *what;
    Noted count;
} * unread;
static size_t unread_count;
static Noted unread_more; /* fields beyond the first ROW_UNREAD_MAX */

static bool found[FIELD_COUNT]; /* a row has the field that the user named */

static void note(Noted *n, int64_t count, const char *name, int64_t line) {
    if (count && !n->count) snprintf(n->first, sizeof n->first, "%.90s, line %lld", name, (long long)line);
    n->count += count;
}

/* Counts a field that is not read. */
static void note_unread(const char *what, const char *name, int64_t line) {
    size_t k = 0;
    while (k < unread_count && strcmp(unread[k].what, what)) k++;
    if (k == ROW_UNREAD_MAX) {
        note(&unread_more, 1, name, line);
        return;
    }
    if (k == unread_count) {
        unread = xrealloc(unread, ++unread_count, sizeof *unread);
        unread[k] = (struct Unread){.what = xstrdup(what)};
    }
    note(&unread[k].count, 1, name, line);
}

/* Adds what a row has. name, line: where it is. */
static void add_notes(const RowMade *m, const char *name, int64_t line) {
    for (int i = 0; i < NOTE_COUNT; i++) note(&noted[i], m->notes[i], name, line);
    for (int i = 0; i < m->unread_count; i++) note_unread(m->unread[i], name, line);
    note(&unread_more, m->unread_more, name, line);
    for (int i = 0; i < FIELD_COUNT; i++) found[i] = found[i] || m->found[i];
}

static const char *note_text(RowNote i) {
    static const char *const texts[NOTE_COUNT] = {
        [NOTE_TOO_LONG] = "records dropped because they are longer than --max-tokens",
        [NOTE_TRUNCATED] = "records truncated to --max-tokens, without their stop token",
        [NOTE_NO_MASK] = "records with an empty mask, because they have no assistant message",
        [NOTE_SPECIAL_TEXT] =
            "texts that contain the name of a special token as plain text (give prompts without their template)",
        [NOTE_STOP_TEXT] = "completions that contain the text that ends the assistant's turn",
        [NOTE_SPACE_BEFORE] =
            "prompts that end in a space, which GPT-2's tokenizer expects at the start of the next word",
        [NOTE_EQUAL] = "records dropped because two of their completions are the same",
        [NOTE_NO_ANSWER] = "records with neither an answer nor a task for a verifier",
        [NOTE_NO_VERIFIER] = "records whose task has no verifier; only a reward program can score their completions",
        [NOTE_UNCHECKED] = "records whose task cannot check their answer; no verifier can score their completions",
        [NOTE_SPLIT] =
            "conversations written as one record per assistant message, because the template changes old turns",
        [NOTE_NO_TOOLS] = "records whose tools are left out, because the template does not write them",
        [NOTE_TEXT_ARGUMENTS] =
            "messages with a tool call whose arguments are a text, which most templates quote; expected an object",
        [NOTE_THINK] = "fields with reasoning, which is written as <think>...</think> before the content",
        [NOTE_EMPTY] = "messages of the assistant without text"};
    return i == NOTE_TRUNCATED && rows.kind == ROW_STEP ? "records truncated to --max-tokens, without their last steps"
                                                        : texts[i];
}

static void complain(const Noted *n, const char *what) {
    if (n->count) warn("%s: %lld (first: %s)", what, (long long)n->count, n->first);
}

/* Ends the program if the user named a field that no row has. */
static void check_found(const char *input) {
    for (int i = 0; i < FIELD_COUNT; i++)
        if (rows.fields.name[i] && !found[i]) {
            give_up();
            die("%s: no row has the field '%s' (--%s)", input, rows.fields.name[i], row_field[i].option);
        }
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

/* Opens the model's template of --chat-template-path. */
static void open_model_template(void) {
    Error e, note;
    json_t *variables = o.template_kwargs ? json_loads(o.template_kwargs, 0, NULL) : NULL;
    if (o.template_kwargs && !json_is_object(variables))
        usage_error("--chat-template-kwargs %s: is not a JSON object", o.template_kwargs);
    char *spec = jinja_chat_open(o.template_path, variables, o.date, &note, &e);
    if (!spec || !chat_template_parse(&given_template, spec, &e))
        die("--chat-template-path %s: %s", o.template_path, e.text);
    if (*note.text) warn("%s", note.text);
    free(spec);
    json_decref(variables);
}

/* Parses the template that the user gave, before anything is read. */
static void open_template(void) {
    Error e;
    if (o.template_path) open_model_template();
    else if (strcmp(o.template, "auto")) {
        if (!chat_template_parse(&given_template, o.template, &e)) usage_error("--template: %s", e.text);
    } else if (model_template && !chat_template_parse(&given_template, model_template, &e))
        die("--model %s: %s", o.model, e.text);
}

/* Warns if the model would not learn to end its turns. */
static void check_stop(void) {
    bool trained;
    if (!rows.chat.model || !o.assistant_only || rows.kind != ROW_CHAT) return;
    if (jinja_chat_stop(rows.chat.model, &rows.tokenizer, &trained) >= 0 && !trained)
        warn(
            "chat template: the token that ends the assistant's turn is outside {%% generation %%}, so the model does not "
            "learn to stop");
}

/* Checks that the first row has the fields that the user named and that decide its kind. */
static void check_named(const Jsonl *j, json_t *row) {
    Error e;
    for (int i = 0; i < FIELD_COUNT; i++) {
        const char *name = rows.fields.name[i];
        if (name && row_field[i].decides && !row_value(row, name)) {
            row_missing(j, row, name, row_field[i].option, &e);
            fail(&e);
        }
    }
}

/* Ends the program if an option was given that has no effect on records of this kind. row: the first one; NULL: plain
 * text. */
static void check_used(const json_t *row) {
    const bool text = rows.kind == ROW_TEXT;
    if (mixes && text)
        die("%s: a token shard is not made as a mixture; make one of each file, and give train_sft -i FILE:WEIGHT",
            inputs.path[0]);
    const OptionUse use[] = {
        {&rows.task_name, rows.kind == ROW_PROMPT, "used only for records of kind prompt"},
        {&rows.answer_after, rows.kind == ROW_PROMPT, "used only for records of kind prompt"},
        {&rows.prompt_end, rows.kind == ROW_PREFERENCE, "used only for records of kind preference"},
        {&rows.step_separator, rows.kind == ROW_STEP, "used only for records of kind step"},
        {&o.assistant_only, rows.kind == ROW_CHAT || o.assistant_only, "used only for records of kind chat"},
        {&o.separator, !row || inputs.count > 1, "used only for plain text"},
        {&o.template, !text, "not used for records of kind text"},
        {&o.template_path, !text, "not used for records of kind text"},
        {&rows.system, !text, "not used for records of kind text"},
        {&o.max_tokens, !text, "not used for records of kind text"},
        {&o.hold_out, !text, "not used for records of kind text"},
        {&o.wordings, row && !text, "not used for records of kind text"},
    };
    options_refuse_unused(options, use, sizeof use / sizeof *use);
}

/* Determines the kind of the records from the first row. */
static void settle_kind(const Jsonl *j, json_t *row) {
    char names[240];
    if (row) check_named(j, row);
    if (rows.kind == ROW_AUTO) rows.kind = row ? row_kind(&rows.fields, row) : ROW_TEXT;
    if (rows.kind != ROW_AUTO) return;
    row_list(row, names, sizeof names);
    die("%s: line %lld: has the fields %s; expected messages, prompt, chosen and rejected, or text; set the "
        "names of your fields with --prompt-field and the other --...-field options",
        j->name, (long long)j->line, names);
}

/* Whether the row is made of messages or of what becomes several: its default template is chatml. */
static bool row_has_turns(json_t *row) {
    const RowFields *f = &rows.fields;
    const json_t *prompt = row_peek(f, row, FIELD_PROMPT), *chosen = row_peek(f, row, FIELD_CHOSEN),
                 *completion = row_peek(f, row, FIELD_COMPLETION),
                 *ranked = json_array_get(row_peek(f, row, FIELD_COMPLETIONS), 0);
    char name[128];
    return row_peek(f, row, FIELD_MESSAGES) || row_peek(f, row, FIELD_HISTORY) || row_peek(f, row, FIELD_SYSTEM) ||
           json_is_array(prompt) || json_is_object(prompt) || json_is_array(chosen) || json_is_object(chosen) ||
           json_is_array(completion) || json_is_array(ranked) || json_is_object(ranked) ||
           (!f->name[FIELD_PROMPT] && !strcmp(row_called(f, row, FIELD_PROMPT, name), "instruction"));
}

/* Determines the kind from the first row, and the template unless one is given; NULL: plain text. */
static void settle(const Jsonl *j, json_t *row) {
    Error e;
    settle_kind(j, row);
    check_used(row);
    rows.texts = !given_template.spec && !(row && row_has_turns(row));
    if (given_template.spec) rows.chat = given_template; /* which rows_free() frees */
    else if (!chat_template_parse(&rows.chat, rows.texts ? "plain" : "chatml", &e)) die("%s", e.text);
    const int32_t vocab = rows.tokenizer.vocab;
    if (rows.kind != ROW_TEXT && !chat_add_specials(&rows.chat, &rows.tokenizer, &e)) die("%s", e.text);
    for (int32_t id = vocab; id < rows.tokenizer.vocab; id++) {
        size_t n;
        const char *token = tokenizer_token(&rows.tokenizer, id, &n);
        if (!o.quiet)
            fprintf(stderr, "%s: added the template's %.*s to the tokenizer as token %d\n",
                    program_invocation_short_name, (int)n, token, id);
    }
    rows.stop = chat_stop_token(&rows.chat, &rows.tokenizer);
    if (rows.stop < 0)
        die("chat template: the assistant's turn ends with '%s', which is not one token of the tokenizer; end it with "
            "{eos} or a special token",
            rows.chat.stop);
    check_stop();
    open_workers();
    open_sides();
}

static bool enough(void) { return o.limit && !mixes && sides[0].records + sides[1].records >= o.limit; }

/* Adds what the lines of a batch became. Ends the program if one is invalid and may not be skipped. */
static void add_lines(Jsonl *j, const RowBatch *b) {
    for (int i = 0; i < b->count && !enough(); i++) {
        const RowLine *l = &b->line[i];
        for (int k = 0; k < l->count; k++) {
            RowMade *m = &l->made[k];
            add_notes(m, j->name, l->number);
            if (m->result == ROW_MADE) add_record(m);
            if (m->result == ROW_BAD && !jsonl_skip(j, m->error)) fail(m->error);
        }
    }
}

/* Determines the kind and the template from the first row, or from the first instance of a task. */
static void settle_row(const Jsonl *j, json_t *row) {
    Error e;
    if (!o.super_ni.on) {
        settle(j, row);
        return;
    }
    json_t *one = json_pack("{s:s,s:s}", "prompt", "", o.kind == ROW_PROMPT ? "answer" : "completion", "");
    if (!json_object_get(row, "Instances") && !json_object_get(row, "Instance")) {
        row_missing(j, row, "Instances", "super-ni", &e);
        fail(&e);
    }
    settle(j, one);
    json_decref(one);
}

static void read_lines(Jsonl *j) {
    Error e;
    json_t *row;
    RowBatch b = {.more = 1};
    if (!rows.chat.spec) {
        const int more = jsonl_next(j, &row, &e);
        if (more < 0) fail(&e);
        if (!more) return;
        settle_row(j, row);
        row_batch_add(&b, j, false);
    }
    while (b.more > 0 && !enough()) {
        row_batch_read(&b, j);
        row_batch_convert(&b, &workers, j, o.kind != 0, (uint64_t)o.seed);
        add_lines(j, &b);
        if (b.more < 0 && !enough()) fail(&b.error);
        row_batch_clear(&b);
    }
    row_batch_free(&b);
}

/* Whether a text looks like a table of separated values: two lines or more whose first has names alone, with the same
 * number of separators. *name: that of the separator. */
static bool looks_like_table(const char *text, size_t n, const char **name) {
    static const struct {
        char byte;
        const char *name;
    } kinds[] = {{',', "commas (CSV)"}, {'\t', "tabs (TSV)"}, {';', "semicolons"}};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        size_t counts[2] = {0, 0}, at = 0;
        bool names = true;
        for (int line = 0; line < 2 && at < n; line++, at++)
            for (; at < n && text[at] != '\n'; at++) {
                counts[line] += text[at] == kinds[k].byte;
                if (!line && text[at] != kinds[k].byte)
                    names = names && (isalnum((unsigned char)text[at]) || strchr("_\"-.\r", text[at]));
            }
        *name = kinds[k].name;
        if (names && counts[0] && counts[1] >= counts[0]) return true;
    }
    return false;
}

/* Refuses a file that is not a text for a language model. */
static void check_text(const Jsonl *j, const TextBuffer *text) {
    const char *name;
    Error e;
    if (memchr(text->text, 0, text->length)) error_set(&e, "%s: is binary: it contains the byte 0", j->name);
    else if (o.kind == ROW_TEXT) return;
    else if (!text->length) error_set(&e, "%s: is empty", j->name);
    else if (looks_like_table(text->text, text->length, &name))
        error_set(&e,
                  "%s: is a table with %s, expected JSON lines; convert it: python3 -c 'import pandas, sys; "
                  "pandas.read_csv(sys.argv[1], sep=None, engine=\"python\").to_json(sys.argv[2], orient=\"records\", "
                  "lines=True)' IN OUT; --kind text reads it as a text",
                  j->name, name);
    else return;
    fail(&e);
}

/* Reads plain text. The end-of-text token precedes each document, as in llm.c's shards. */
static void read_text(Jsonl *j) {
    Error e;
    TextBuffer all = {0};
    if (rows.kind != ROW_TEXT && rows.kind != ROW_AUTO) {
        error_set(&e, "%s: is plain text, expected JSONL of kind %s", j->name, record_kind_name((RecordKind)rows.kind));
        fail(&e);
    }
    text_clear(&all);
    if (!jsonl_rest(j, &all, &e)) fail(&e);
    check_text(j, &all);
    if (!rows.chat.spec) settle(j, NULL);
    const size_t valid = utf8_valid(all.text, all.length), mark = o.separator ? strlen(o.separator) : 0;
    if (valid < all.length) {
        long long line = 1;
        for (size_t i = 0; i < valid; i++) line += all.text[i] == '\n';
        error_set(&e, "%s: line %lld: byte %zu of the file is not UTF-8", j->name, line, valid + 1);
        if (!jsonl_skip(j, &e)) fail(&e);
    }
    RowBatch b = {0};
    for (size_t at = 0; at < all.length && !enough();) {
        while (at < all.length && !row_batch_full(&b)) {
            const char *found = mark ? memmem(all.text + at, all.length - at, o.separator, mark) : NULL;
            const size_t end = found ? (size_t)(found - all.text) + mark
                                     : all.length; /* the separator stays in the document before it */
            if (b.count && end - at >= ROW_BATCH_ALONE) break;
            row_batch_document(&b, all.text + at, end - at);
            at = end;
            if (b.bytes >= ROW_BATCH_ALONE && b.count == 1) break;
        }
        row_batch_convert(&b, &workers, j, true, (uint64_t)o.seed);
        for (int i = 0; i < b.count && !enough(); i++) {
            RowMade *m = b.line[i].made;
            if (m->result == ROW_BAD) fail(m->error);
            add_record(m);
        }
        row_batch_clear(&b);
    }
    row_batch_free(&b);
    text_free(&all);
}

/* ---- the summary ----------------------------------------------------------------------------------------------- */

static void summarize(int64_t skipped, const Error *first) {
    for (int i = 0; i < 2; i++) {
        const Side *s = &sides[i];
        if (o.quiet || !s->path) continue;
        fprintf(stderr, "%s: %s: %s, %lld %s, %lld tokens", program_invocation_short_name, s->path,
                rows.kind == ROW_TEXT ? "text" : record_kind_name((RecordKind)rows.kind), (long long)s->records,
                rows.kind == ROW_TEXT ? "documents" : "records", (long long)s->tokens);
        if (s->records) fprintf(stderr, " (longest %d, mean %.1f)", s->longest, (double)s->tokens / (double)s->records);
        if (rows.kind == ROW_CHAT && s->tokens)
            fprintf(stderr, ", %.1f %% of them trained on", 100.0 * (double)s->trained / (double)s->tokens);
        if (rows.kind != ROW_TEXT)
            fprintf(stderr, "; template %s%s",
                    rows.chat.model               ? "of the model"
                    : strlen(rows.chat.spec) < 20 ? rows.chat.spec
                                                  : "of your own",
                    rows.texts ? ", the default for texts (for a chat model, give --model or --template)" : "");
        fputc('\n', stderr);
    }
    if (skipped) warn("invalid lines skipped: %lld (first: %s)", (long long)skipped, first->text);
    for (int i = 0; i < NOTE_COUNT; i++) complain(&noted[i], note_text((RowNote)i));
    for (size_t i = 0; i < unread_count; i++) complain(&unread[i].count, unread[i].what);
    complain(&unread_more, "occurrences of further fields, which are not read");
    if (!sides[0].records) warn("%s: is empty", o.output);
    if (o.val_output && !sides[1].records) warn("%s: is empty: no record was assigned to --val-output", o.val_output);
}

/* ---- the command line ------------------------------------------------------------------------------------------ */

/* Reads the file of --wordings. Until a row has its own, the first wording stands for all. */
static void open_wordings(void) {
    Error e;
    if (!o.wordings) return;
    if (!wordings_open(&wordings, o.wordings, (int)o.wordings_per_row, (uint64_t)o.seed, &e))
        die("--wordings: %s", e.text);
    const RowFieldId field[] = {FIELD_PROMPT, FIELD_COMPLETION};
    const char *pattern[] = {wordings.item[0].prompt, wordings.item[0].completion};
    for (int i = 0; i < 2; i++) {
        char name[40];
        row_template_option(field[i], name);
        if (!pattern[i]) continue;
        if (rows.fields.pattern[field[i]]) usage_error("--wordings and --%s: give only one of them", name);
        if (rows.fields.name[field[i]])
            usage_error("--wordings and --%s: give only one of them", row_field[field[i]].option);
        rows.fields.pattern[field[i]] = pattern[i];
        rows.fields.pattern_option[field[i]] = "wordings";
    }
    rows.wordings = &wordings;
    for (int i = 0; i < wordings.count; i++)
        if (row_pattern_has_label(&rows.fields, wordings.item[i].prompt) ||
            row_pattern_has_label(&rows.fields, wordings.item[i].completion))
            rows.fields.label_in_pattern = true;
}

/* Ends the program if an option was given that has no effect with the other options, whatever the records are. */
static void check_needed(void) {
    const OptionUse use[] = {
        {&o.truncation, o.max_tokens > 0, "used only with --max-tokens"},
        {&o.seed, o.val_output || mixes || o.wordings || o.super_ni.on,
         "used only with --val-output, a mixture, --wordings or --super-ni"},
        {&o.wordings_per_row, o.wordings != NULL, "used only with --wordings"},
        {&o.mix.temperature, o.mix.mixing == MIX_TEMPERATURE, "used only with --mixing temperature"},
        {&o.mix.stop, !o.limit || o.mix.stop == MIX_STEPS, "--limit sets the number of records; give only one of them"},
        {&o.super_ni.positive, o.super_ni.on, "used only with --super-ni"},
        {&o.super_ni.negative, o.super_ni.on, "used only with --super-ni"},
        {&o.super_ni.explanation, o.super_ni.on, "used only with --super-ni"},
        {&o.super_ni.max_source, o.super_ni.on, "used only with --super-ni"},
        {&o.super_ni.per_task, o.super_ni.on, "used only with --super-ni"},
    };
    options_refuse_unused(options, use, sizeof use / sizeof *use);
}

/* Refuses fields that the tasks of --super-ni do not have. */
static void check_super_ni(void) {
    if (!o.super_ni.on) return;
    if (o.kind != ROW_AUTO && o.kind != ROW_CHAT && o.kind != ROW_PROMPT)
        usage_error("--super-ni: makes records of kind chat or prompt");
    if (o.wordings) usage_error("--super-ni and --wordings: both give the prompt; give only one of them");
    for (int i = 0; i < FIELD_COUNT; i++) {
        char name[40];
        if (rows.fields.pattern[i])
            usage_error("--super-ni and --%s: give only one of them", row_template_option((RowFieldId)i, name));
        if (rows.fields.name[i] && i != FIELD_CLUSTER)
            usage_error("--super-ni and --%s: give only one of them", row_field[i].option);
    }
    o.super_ni.seed = (uint64_t)o.seed;
    rows.super_ni = &o.super_ni;
}

static void check_patterns(void) {
    Error e;
    for (int i = 0; i < FIELD_COUNT; i++) {
        const char *option = row_field[i].option, **pattern = &rows.fields.pattern[i];
        char name[40];
        if (!*pattern) continue;
        row_template_option((RowFieldId)i, name);
        if (rows.fields.name[i]) usage_error("--%s and --%s: give only one of them", option, name);
        *pattern = row_unescape(*pattern);
        if (!row_pattern_check(*pattern, NULL, &e)) usage_error("--%s: %s", name, e.text);
        if (row_pattern_has_label(&rows.fields, *pattern)) rows.fields.label_in_pattern = true;
    }
}

/* Lists the files of --input; standard input if there are none. */
static void open_inputs(void) {
    Error e;
    if (!mix_options_inputs(&inputs, &o.mix, &o.inputs, &e)) usage_error("%s", e.text);
    if (!inputs.count) inputs_add(&inputs, "-");
    mixes = mix_options_mix(&o.mix, &inputs);
    made = (int64_t *)xcalloc((size_t)inputs.count, sizeof *made);
}

/* Refuses an output that is the other output or an input, also through links. */
static void check_paths(void) {
    Error e;
    OutputPaths p = {0};
    output_add(&p, "output", o.output, OUTPUT_WRITTEN);
    output_add(&p, "val-output", o.val_output, OUTPUT_WRITTEN);
    if (o.val_output && (!strcmp(o.val_output, o.output) || !output_distinct(&p, NULL)))
        usage_error("--val-output: is the same file as --output");
    for (int i = 0; i < inputs.count; i++) output_add(&p, "input", inputs.path[i], OUTPUT_READ);
    if (!output_distinct(&p, &e)) usage_error("%s", e.text);
    output_free(&p);
}

/* Checks the values of --hold-out; their field is that of the clusters. */
static void check_hold_out(void) {
    const char **field = &rows.fields.name[FIELD_CLUSTER];
    if (o.hold_out.count && !o.val_output) usage_error("--hold-out requires --val-output");
    held = (bool *)xcalloc((size_t)o.hold_out.count + 1, sizeof *held);
    for (int i = 0; i < o.hold_out.count; i++) {
        const char *value = o.hold_out.items[i], *equals = strchr(value, '=');
        if (!equals || equals == value || !equals[1])
            usage_error("--hold-out %s: is not FIELD=NAME, such as cluster=puzzles", value);
        const size_t n = (size_t)(equals - value);
        if (*field && (strlen(*field) != n || memcmp(*field, value, n)))
            usage_error("--hold-out %s: the field of the clusters is already '%s'", value, *field);
        if (!*field) *field = xstrndup(value, n);
    }
    clusters = clusters_new(*field ? *field : "cluster");
}

static void check_options(void) {
    if (!o.output) usage_error("-o/--output is required");
    if (!o.inputs.count && !o.mix.file && isatty(STDIN_FILENO)) usage_error("-i/--input is required");
    open_inputs();
    if (o.val_output && o.val_fraction <= 0 && !o.hold_out.count)
        usage_error("--val-output requires --val-fraction above 0, or --hold-out");
    check_hold_out();
    if (!o.val_output && o.val_fraction > 0) usage_error("--val-fraction requires --val-output");
    check_needed();
    check_paths();
    rows.answer_after = row_unescape(rows.answer_after);
    rows.prompt_end = row_unescape(rows.prompt_end);
    rows.step_separator = row_unescape(rows.step_separator);
    rows.system = row_unescape(rows.system);
    check_super_ni();
    check_patterns();
    open_wordings();
    if (rows.fields.name[FIELD_MESSAGES] && (rows.fields.name[FIELD_PROMPT] || rows.fields.pattern[FIELD_PROMPT]))
        usage_error("--messages-field and %s: both give the prompt; give only one of them",
                    o.wordings                          ? "--wordings"
                    : rows.fields.pattern[FIELD_PROMPT] ? "--prompt-template"
                                                        : "--prompt-field");
    o.separator = row_unescape(o.separator);
    rows.kind = (RowKind)o.kind;
    rows.truncation = (RowTruncation)o.truncation;
    rows.max_tokens = o.max_tokens;
    rows.train_all = !o.assistant_only;
    if (o.template_path && strcmp(o.template, "auto"))
        usage_error("--template and --chat-template-path: give only one of them");
    if (!o.template_path && (o.template_kwargs || o.date))
        usage_error("--chat-template-kwargs and --date require --chat-template-path");
    if (rows.task_name && verify_kind(rows.task_name) < 0)
        warn("--task %s: no verifier of that name is built in; only a reward program can score these records",
             rows.task_name);
}

/* Whether the name ends in .jsonl or .json (or these and .zst or .gz): such a file is never read as plain text. */
static bool named_jsonl(const char *path) {
    const size_t n = strlen(path);
    const char *end = path + n -
                      (n > 4 && !strcmp(path + n - 4, ".zst")  ? 4
                       : n > 3 && !strcmp(path + n - 3, ".gz") ? 3
                                                               : 0);
    return (end - path > 6 && !memcmp(end - 6, ".jsonl", 6)) || (end - path > 5 && !memcmp(end - 5, ".json", 5));
}

/* Reads the tokenizer and the chat template of --model. */
static void open_model(void) {
    ModelFile f;
    Error e;
    if (!model_read_texts(&f, o.model, &e)) die("--model %s", e.text);
    if (!f.tokenizer && !o.tokenizer) die("--model %s: the model has no tokenizer; give one with --tokenizer", o.model);
    if (!o.tokenizer && !tokenizer_load(&rows.tokenizer, f.tokenizer, f.tokenizer_bytes, &e))
        die("--model %s: %s", o.model, e.text);
    model_template = xstrdup(f.chat_template ? f.chat_template : "plain");
    if (f.note) warn("%s", f.note);
    model_file_free(&f);
}

/* Opens the tokenizer: --tokenizer, else that of --model, else bytes. */
static void open_tokenizer(void) {
    Error e;
    if (o.model) open_model();
    if (o.tokenizer || !o.model) {
        o.tokenizer = o.tokenizer ? o.tokenizer : "bytes";
        if (!tokenizer_open(&rows.tokenizer, o.tokenizer, &e)) die("%s", e.text);
    } else o.tokenizer = o.model;
}

/* Warns if a model's folder has a chat template that is not used. */
static void check_template(void) {
    TextBuffer path = {0};
    if (o.model || o.template_path || strcmp(o.template, "auto") || rows.kind == ROW_TEXT) return;
    text_format(&path, "%s/chat_template.jinja", o.tokenizer);
    if (!access(path.text, F_OK))
        warn("%s: the model's chat template is not used; give --model or --chat-template-path %s, or --template",
             o.tokenizer, o.tokenizer);
    text_free(&path);
}

/* Prints the names under which fields are read. */
static int print_fields(void) {
    printf("option             names, of which the first that a row has is read\n");
    for (int i = 0; i < FIELD_COUNT; i++) {
        printf("--%-16s ", row_field[i].option);
        for (const char *s = row_field[i].names; *s;) {
            const size_t n = strcspn(s, "|");
            printf("%.*s%s", (int)n, s, s[n] ? ", " : "");
            s += n + (s[n] == '|');
        }
        printf("\n                   %s\n", row_field[i].help);
    }
    printf("\nkinds, of which the first whose fields a row has is taken\n");
    for (size_t i = 0; i < sizeof row_kinds / sizeof *row_kinds; i++)
        printf("%-18s %s\n", row_kinds[i].name, row_kinds[i].fields);
    return ferror(stdout) || fflush(stdout);
}

int main(int argc, char **argv) {
    Error e, first = {{0}};
    int64_t skipped = 0;
    if (options_parse(options, &about, argc, argv) < argc)
        usage_error("%s: unexpected argument; give inputs with -i", argv[argc - 1]);
    if (o.help_fields) return print_fields();
    check_options();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGHUP, on_signal);
    open_tokenizer();
    open_template();
    for (int i = 0; i < inputs.count && !enough(); i++) {
        Jsonl j;
        if (!jsonl_open(&j, inputs.path[i], o.skip_bad, &e)) fail(&e);
        j.objects = o.super_ni.on;
        if (rows.kind == ROW_TEXT || rows.kind == ROW_AUTO) {
            if (jsonl_peek(&j) == '{' || jsonl_peek(&j) == '[' || named_jsonl(inputs.path[i])) read_lines(&j);
            else read_text(&j);
        } else read_lines(&j);
        made[i] = sides[0].records;
        for (int k = 0; k < i; k++) made[i] -= made[k];
        if (!skipped) first = j.first;
        skipped += j.skipped;
        jsonl_close(&j);
    }
    if (!rows.chat.spec)
        die("%s: contains no record%s%s", inputs.path[0], skipped ? "; " : "", skipped ? first.text : "");
    check_template();
    if (rows.kind != ROW_TEXT || found[FIELD_TEXT]) check_found(inputs.path[0]);
    check_held();
    if (mixes) arrange_mixture();
    commit();
    summarize(skipped, &first);
    row_workers_close(&workers);
    rows_free(&rows);
    inputs_close(&inputs);
    free(made);
    wordings_close(&wordings);
    for (int i = 0; i < 2; i++)
        token_list_free(&sides[i].text), token_list_free(&sides[i].trains), token_list_free(&sides[i].places);
    json_decref(clusters), free(held);
    return 0;
}
