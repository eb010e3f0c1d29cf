/* make_tasks.c - generator of problems with checkable answers, as JSON lines or as record shards for the trainers.
 *
 * A record's problem is a function of (seed, record number). A problem that belongs to the other split, or whose prompt
 * is already in the file, is drawn again: no file contains a prompt twice, and the splits have no problem in common
 * (llmc/reward/task.h). Each demonstration is checked, before it is written, by the verifier that will score the model.
 *
 *   --format prompt   {"prompt","answer","task", fields}     records of kind prompt, for train_grpo and evaluate; with
 *                                                            --target-key, the demonstration is one of the fields
 *   --format chat     {"prompt","completion"}                records of kind chat, for train_sft
 */
#include "../llmc/base/error.h"           /* usage_error, Error, die, checked_object, ... */
#include "../llmc/base/io.h"              /* writer_write, Writer, writer_commit, writer_open, ... */
#include "../llmc/base/options.h"         /* OPTION_INT, OPTION_TEXT, OPTION_CHOICE, OPTION_GROUP, ... */
#include "../llmc/base/output.h"          /* OUTPUT_WRITTEN, output_add, OutputPaths, output_distinct, ... */
#include "../llmc/base/random.h"          /* Random, random_real, RANDOM_TASK, random_start */
#include "../llmc/base/text.h"            /* text_clear, text_free, TextBuffer, TokenList, ... */
#include "../llmc/records/shard.h"        /* Record, shard_add, RECORD_CHAT, RECORD_PROMPT, ... */
#include "../llmc/reward/task.h"          /* TASK_NAMES, Task, TaskKind, TaskOptions, ... */
#include "../llmc/reward/task_tools.h"    /* task_facts, task_lookup_document */
#include "../llmc/reward/tasks.h"         /* task_check, task_problem, task_solve */
#include "../llmc/reward/verify.h"        /* rewards_verify */
#include "../llmc/reward/verify_answer.h" /* RewardInput */
#include "../llmc/text/chat.h"            /* ChatMessage, chat_encode, ChatTemplate, chat_add_specials, ... */
#include "../llmc/text/tokenizer.h"       /* TOKENIZER_CONTINUES, Tokenizer, tokenizer_encode, tokenizer_free, ... */
#include "../llmc/text/tokenizer_files.h" /* tokenizer_open */
#include "../llmc/tools/tool_format.h"    /* TOOL_FORMATS, ToolFormat, tool_format_answer, ... */
#include <signal.h>

enum { SPLIT_TRAIN, SPLIT_HELDOUT, SPLIT_ALL };
enum { FORMAT_PROMPT, FORMAT_CHAT };
enum { AS_AUTO, AS_JSONL, AS_SHARD };
enum { DRAWS_MAX = 200000 }; /* draws for one record before its task counts as exhausted */

static struct {
    const char *task, *output, *corpus, *tokenizer, *template, *tool_format, *target;
    int64_t count, seed, level, digits, min_digits, items, largest;
    int split, format, as, style;
    double noise;
} o = {.task = "add",
       .output = "-",
       .tokenizer = "bytes",
       .template = "plain",
       .count = 1000,
       .seed = 1,
       .level = 2,
       .min_digits = 1};

static const OptionAbout about = {
    "[options]", "Writes problems with checkable answers, for train_sft (--format chat), train_grpo and evaluate.\n\n"
                 "  make_tasks --task add --digits 2 --count 2000 --format chat --noise 0.3 -o sft.shard\n"
                 "  make_tasks --task add --digits 2 --count 1000 -o train.shard\n"
                 "  make_tasks --task add --digits 2 --count 200 --split heldout -o heldout.shard\n"
                 "  make_tasks --task add:2,countdown:1,word:1 --level 3 --count 5 | jq .\n"
                 "  make_tasks --task lookup --corpus-output facts.jsonl -o tasks.shard\n\n"
                 "data/README.md describes the tasks; a higher level asks for larger problems."};

static const Option table[] = {
    OPTION_GROUP("Problems"),
    OPTION_TEXT("task", 0, &o.task, "NAME[:WEIGHT],...", "tasks with sampling weights: " TASK_NAMES),
    OPTION_INT("level", 0, &o.level, 1, 5, "difficulty"),
    OPTION_INT("digits", 0, &o.digits, 0, 18, "maximum digits of an operand; 0: set by --level"),
    OPTION_INT("min-digits", 0, &o.min_digits, 1, 18, "minimum digits of an operand"),
    OPTION_INT("items", 0, &o.items, 0, TASK_VALUES,
               "size: operands, given numbers, list items, story steps or maximum brackets; 0: set by --level"),
    OPTION_INT("largest", 0, &o.largest, 0, 9999, "largest number (countdown, sort, word); 0: set by --level"),
    OPTION_INT("count", 0, &o.count, 1, 1e9, "number of records"),
    OPTION_INT("seed", 0, &o.seed, 0, 9e15, "random seed; the same seed and options give the same bytes"),
    OPTION_CHOICE("split", 0, &o.split, "train|heldout|all",
                  "split to draw from; one problem in ten is held out, whatever the seed"),
    OPTION_GROUP("Demonstrations"),
    OPTION_CHOICE("style", 0, &o.style, TASK_STYLES,
                  "answer alone, its digits reversed, or the work first; auto: scratchpad for word, else direct"),
    OPTION_REAL("noise", 0, &o.noise, 0, 1, "fraction of demonstrations with a wrong answer"),
    OPTION_TEXT("target-key", 0, &o.target, "NAME",
                "with --format prompt: write the demonstration, too, as this field, which train_grpo --n-prefix reads"),
    OPTION_TEXT("tool-format", 0, &o.tool_format, "NAME",
                "bigmul, lookup: how calls are written: " TOOL_FORMATS " (default: that of the template)"),
    OPTION_GROUP("Output"),
    OPTION_TEXT("output", 'o', &o.output, "FILE", "output file; - is standard output, .zst compresses"),
    OPTION_TEXT("corpus-output", 0, &o.corpus, "FILE",
                "lookup: write the facts of --seed, as documents for make_corpus"),
    OPTION_CHOICE("format", 0, &o.format, "prompt|chat", "prompts with reference answers, or with demonstrations"),
    OPTION_CHOICE("as", 0, &o.as, "auto|jsonl|shard",
                  "output format; auto writes a shard if FILE ends in .shard or .shard.zst"),
    OPTION_TEXT("tokenizer", 't', &o.tokenizer, "SPEC",
                "tokenizer of a shard: bytes, VOCAB:MERGES, a tokenizer.json or a directory"),
    OPTION_TEXT("template", 0, &o.template, "SPEC",
                "chat template of a shard: plain, chatml, llama, nanochat or a custom template"),
    OPTION_END};

/* ---- choice of the task ---------------------------------------------------------------------------------------- */

typedef struct Mix {
    int count;
    TaskKind kind[TASK_KINDS];
    double weight[TASK_KINDS], total;
    int64_t records[TASK_KINDS];
} Mix;

static Mix mix_parse(const char *spec, const TaskOptions *options) {
    Mix mix = {0};
    Error e;
    for (const char *at = spec;;) {
        char name[32], *end;
        const size_t n = strcspn(at, ":,");
        snprintf(name, sizeof name, "%.*s", (int)(n < sizeof name ? n : sizeof name - 1), at);
        const int kind = option_choice_index(TASK_NAMES, name);
        if (kind < 0) usage_error("--task: '%s' is not one of %s", name, TASK_NAMES);
        for (int i = 0; i < mix.count; i++)
            if ((int)mix.kind[i] == kind) usage_error("--task: %s is given twice", name);
        if (!task_check((TaskKind)kind, name, options, &e)) usage_error("--%s", e.text);
        double weight = 1;
        at += n;
        if (*at == ':') {
            weight = strtod(at + 1, &end);
            if (end == at + 1 || (*end && *end != ',') || !(weight > 0) || !isfinite(weight))
                usage_error("--task: the weight of %s must be a number above 0", name);
            at = end;
        }
        mix.kind[mix.count] = (TaskKind)kind;
        mix.weight[mix.count++] = weight;
        mix.total += weight;
        if (!*at) return mix;
        at++;
    }
}

static int mix_draw(const Mix *mix, Random *r) {
    double u = random_real(r) * mix->total;
    int i = 0;
    while (i + 1 < mix->count && (u -= mix->weight[i]) >= 0) i++;
    return i;
}

/* ---- prompts already written ----------------------------------------------------------------------------------- */

/* A set of 64-bit hashes with open addressing; 0 marks an empty slot. */
typedef struct Seen {
    uint64_t *slot;
    size_t size, count;
} Seen;

/* Adds `hash`; false if it was already present. */
static bool seen_add(Seen *s, uint64_t hash) {
    if (2 * (s->count + 1) > s->size) {
        Seen larger = {.size = s->size ? 2 * s->size : 1024};
        larger.slot = xcalloc(larger.size, sizeof *larger.slot);
        for (size_t i = 0; i < s->size; i++)
            if (s->slot[i]) seen_add(&larger, s->slot[i]);
        free(s->slot);
        *s = larger;
    }
    hash += !hash;
    size_t i = hash & (s->size - 1);
    for (; s->slot[i]; i = (i + 1) & (s->size - 1))
        if (s->slot[i] == hash) return false;
    s->slot[i] = hash;
    s->count++;
    return true;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

typedef struct Output {
    bool shard;
    Writer lines;
    ShardWriter records;
    Tokenizer tokenizer;
    ChatTemplate template;
    ToolFormat format; /* of the calls of demonstrations */
    TokenList ids;
} Output;

static void output_abort(Output *out) {
    if (out->shard) shard_abort(&out->records);
    else writer_abort(&out->lines);
}

static bool ends_in(const char *text, const char *tail) {
    const size_t n = strlen(text), m = strlen(tail);
    return n >= m && !strcmp(text + n - m, tail);
}

/* Opens the format of calls, if a task has them. */
static void output_format(Output *out, bool calls) {
    Error e;
    if (o.tool_format && !(calls && o.format == FORMAT_CHAT))
        usage_error("--tool-format: used only for demonstrations (--format chat) of bigmul and lookup");
    if (!calls || o.format != FORMAT_CHAT) return;
    if (!out->shard)
        usage_error("--format chat: a line of JSON cannot tell a call from its result; write a shard (-o FILE.shard)");
    const char *spec = o.tool_format ? o.tool_format : tool_format_of(&out->template);
    if (!spec) usage_error("--tool-format: the template has none of its own; give " TOOL_FORMATS);
    if (!tool_format_open(&out->format, spec, &e) || !tool_format_tokens(&out->format, &out->tokenizer, &e))
        usage_error("--%s", e.text);
}

/* Opens the file that is written. calls: a task has calls in its demonstrations. */
static void output_open(Output *out, bool calls) {
    Error e;
    *out = (Output){.shard = o.as == AS_SHARD};
    if (o.as == AS_AUTO) out->shard = ends_in(o.output, ".shard") || ends_in(o.output, ".shard.zst");
    if (!out->shard) {
        output_format(out, calls);
        if (!writer_open(&out->lines, o.output, &e)) die("%s", e.text);
        return;
    }
    void *blob = NULL;
    size_t bytes = 0;
    if (!tokenizer_open(&out->tokenizer, o.tokenizer, &e) || !chat_template_parse(&out->template, o.template, &e) ||
        !chat_add_specials(&out->template, &out->tokenizer, &e) || !tokenizer_store(&out->tokenizer, &blob, &bytes, &e))
        die("%s", e.text);
    output_format(out, calls);
    if (!shard_create(&out->records, o.output, o.format == FORMAT_CHAT ? RECORD_CHAT : RECORD_PROMPT,
                      out->tokenizer.vocab, blob, bytes, out->template.spec, &e))
        die("%s", e.text);
    free(blob);
}

static bool output_line(Output *out, const Task *t, const char *name, Error *e) {
    json_t *line = json_object();
    json_object_set_new(line, "prompt", json_string(t->prompt.text));
    if (o.format == FORMAT_CHAT) json_object_set_new(line, "completion", json_string(t->completion.text));
    else {
        json_object_set_new(line, "answer", json_string(t->answer.text));
        json_object_set_new(line, "task", json_string(name));
        json_object_update(line, t->fields);
    }
    char *text = checked_object(json_dumps(line, JSON_COMPACT), "a line of JSON");
    const bool good = writer_write(&out->lines, text, strlen(text), e) && writer_write(&out->lines, "\n", 1, e);
    free(text);
    json_decref(line);
    return good;
}

/* Appends a call with its mask, or a text (call NULL). */
static bool output_part(Output *out, const json_t *call, const char *text, bool stop, uint8_t **mask, Error *e) {
    const int32_t before = out->ids.count;
    if (call ? !tool_format_encode_call(&out->format, &out->tokenizer, json_string_value(json_object_get(call, "name")),
                                        json_object_get(call, "arguments"), &out->ids, e)
             : !tokenizer_encode(&out->tokenizer, text, strlen(text), TOKENIZER_CONTINUES, &out->ids, e))
        return false;
    if (stop) token_list_append(&out->ids, chat_stop_token(&out->template, &out->tokenizer));
    *mask = xrealloc(*mask, (size_t)out->ids.count + 1, 1);
    memset(*mask + before, 1, (size_t)(out->ids.count - before));
    return true;
}

/* Appends the answer to a step, which is not trained on. */
static bool output_answer(Output *out, const json_t *step, uint8_t **mask, Error *e) {
    const char *name = json_string_value(json_object_get(step, "name")),
               *result = json_string_value(json_object_get(step, "result"));
    const int32_t before = out->ids.count;
    json_t *reply = json_pack("[{s:s,s:s}]", "role", "user", "content", result);
    const bool good =
        name ? tool_format_answer(&out->format, &out->template, &out->tokenizer, &name, &result, 1, false, &out->ids, e)
             : chat_encode_answer(&out->template, &out->tokenizer, reply, &out->ids, e);
    json_decref(reply);
    *mask = xrealloc(*mask, (size_t)out->ids.count + 1, 1);
    memset(*mask + before, 0, (size_t)(out->ids.count - before));
    return good;
}

/* A demonstration of several turns, token for token as the model draws and observes it. */
static bool output_turns(Output *out, const Task *t, const char *fields, Error *e) {
    const ChatMessage question = {"user", t->prompt.text};
    Record r = {.text = t->prompt.text, .answer = t->answer.text, .fields = fields};
    out->ids.count = 0;
    bool good = chat_encode(&out->template, &out->tokenizer, &question, 1, true, &out->ids, &r.mask, e);
    for (size_t i = 0; good && i < json_array_size(t->steps); i++) {
        const json_t *step = json_array_get(t->steps, i);
        const bool call = json_object_get(step, "name") != NULL;
        good = output_part(out, call ? step : NULL, json_string_value(json_object_get(step, "said")),
                           !call || !tool_format_within(&out->format), &r.mask, e) &&
               output_answer(out, step, &r.mask, e);
    }
    good = good && output_part(out, NULL, t->completion.text, true, &r.mask, e);
    r.tokens = out->ids.ids;
    r.count = r.prompt = out->ids.count;
    good = good && shard_add(&out->records, &r, e);
    free(r.mask);
    return good;
}

static bool output_record(Output *out, const Task *t, const char *name, const char *fields, Error *e) {
    const bool chat = o.format == FORMAT_CHAT;
    if (chat && json_array_size(t->steps)) return output_turns(out, t, fields, e);
    const ChatMessage messages[] = {{"user", t->prompt.text}, {"assistant", t->completion.text}};
    Record r = {.text = t->prompt.text, .task = name, .answer = t->answer.text, .fields = fields};
    out->ids.count = 0;
    if (!chat_encode(&out->template, &out->tokenizer, messages, chat ? 2 : 1, !chat, &out->ids, chat ? &r.mask : NULL,
                     e))
        return false;
    r.tokens = out->ids.ids;
    r.count = r.prompt = out->ids.count;
    const bool good = shard_add(&out->records, &r, e);
    free(r.mask);
    return good;
}

/* ---- the corpus ------------------------------------------------------------------------------------------------- */

/* Writes the facts of lookup as documents. */
static void write_corpus(const TaskOptions *options) {
    Error e;
    Writer out;
    TextBuffer title = {0}, text = {0};
    const int64_t facts = task_facts(options);
    bool good = writer_open(&out, o.corpus, &e);
    for (int64_t i = 0; good && i < facts; i++) {
        text_clear(&title), text_clear(&text);
        task_lookup_document((uint64_t)o.seed, facts, i, &title, &text);
        json_t *row = json_pack("{s:s,s:s}", "title", title.text, "text", text.text);
        char *line = checked_object(json_dumps(row, JSON_COMPACT), "a line of JSON");
        good = writer_write(&out, line, strlen(line), &e) && writer_write(&out, "\n", 1, &e);
        free(line);
        json_decref(row);
    }
    if (!good || !writer_commit(&out, &e)) die("%s", e.text);
    text_free(&title), text_free(&text);
    fprintf(stderr, "make_tasks: %s: %lld facts\n", o.corpus, (long long)facts);
}

/* Refuses --corpus-output where it would write nothing, or over the records. */
static void check_corpus(const Mix *mix) {
    Error e;
    OutputPaths files = {0};
    bool lookup = false;
    if (!o.corpus) return;
    for (int i = 0; i < mix->count; i++) lookup = lookup || mix->kind[i] == TASK_LOOKUP;
    if (!lookup) usage_error("--corpus-output: used only for the task lookup, which has facts");
    if (!strcmp(o.corpus, "-") && !strcmp(o.output, "-"))
        usage_error("--corpus-output and -o: both are standard output; give each its own path");
    output_add(&files, "corpus-output", o.corpus, OUTPUT_WRITTEN);
    output_add(&files, "output", o.output, OUTPUT_WRITTEN);
    if (!output_distinct(&files, &e)) usage_error("%s", e.text);
    output_free(&files);
}

/* Refuses --target-key where no demonstration can be a field. calls: a task has calls in its demonstrations. */
static void check_target(bool calls) {
    static const char *const taken[] = {"", "prompt", "answer", "task"};
    if (!o.target) return;
    if (o.format == FORMAT_CHAT) usage_error("--target-key: used only with --format prompt");
    if (calls) usage_error("--target-key: a demonstration with calls and their results is not a text");
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        if (!strcmp(o.target, taken[i])) usage_error("--target-key '%s': give another name", o.target);
}

/* Adds the demonstration to the fields of the record. */
static bool add_target(Task *t, const char *name, Error *e) {
    if (!o.target) return true;
    if (json_object_get(t->fields, o.target))
        return error_set(e, "--target-key: the records of %s have a field '%s'; give another name", name, o.target);
    json_object_set_new(t->fields, o.target, json_string(t->completion.text));
    return true;
}

/* ---- the records ----------------------------------------------------------------------------------------------- */

/* Draws a problem of the split that is not in this file yet; false if DRAWS_MAX draws gave none. The prompt of guess is
 * always the same, and its few numbers are in all files. */
static bool draw(Task *t, TaskKind kind, const TaskOptions *options, Random *r, Seen *seen) {
    for (int i = 0; i < DRAWS_MAX; i++) {
        task_problem(t, kind, options, r);
        if (kind == TASK_GUESS) return true;
        if (o.split != SPLIT_ALL && task_held_out(t) != (o.split == SPLIT_HELDOUT)) continue;
        if (seen_add(seen, XXH3_64bits(t->prompt.text, t->prompt.length))) return true;
    }
    return false;
}

int main(int argc, char **argv) {
    Error e;
    options_parse_all(table, &about, argc, argv);
    const TaskOptions options = {(int)o.level, (int)o.digits, (int)o.min_digits,
                                 (int)o.items, o.largest,     (TaskStyle)o.style};
    Mix mix = mix_parse(o.task, &options);
    if (o.noise > 0 && o.format != FORMAT_CHAT && !o.target)
        usage_error("--noise applies to demonstrations; give --format chat or --target-key");
    check_corpus(&mix);
    signal(SIGPIPE, SIG_IGN);
    if (o.corpus) write_corpus(&options);
    Output out;
    Seen seen = {0};
    Task t = {0};
    size_t longest = 0;
    int64_t wrong_count = 0;
    bool calls = false;
    for (int i = 0; i < mix.count; i++) calls = calls || mix.kind[i] >= TASK_BIGMUL;
    check_target(calls);
    output_open(&out, calls);
    for (int64_t i = 0; i < o.count; i++) {
        Random r = random_start((uint64_t)o.seed, RANDOM_TASK + (uint64_t)i);
        char name[32];
        const int which = mix_draw(&mix, &r);
        const bool wrong = random_real(&r) < o.noise;
        option_choice_name(TASK_NAMES, (int)mix.kind[which], name, sizeof name);
        if (!draw(&t, mix.kind[which], &options, &r, &seen)) {
            output_abort(&out);
            die("%s: no new problem in %d draws after %lld records; lower --count or raise the difficulty", name,
                DRAWS_MAX, (long long)mix.records[which]);
        }
        if (!task_solve(&t, &options, wrong, &r, &e) || !add_target(&t, name, &e)) {
            output_abort(&out);
            die("%s", e.text);
        }
        char *fields = checked_object(json_dumps(t.fields, JSON_COMPACT), "the fields of a record");
        float score = NAN;
        rewards_verify(
            &(RewardInput){.task = name, .completion = t.completion.text, .answer = t.answer.text, .fields = fields},
            &score);
        if (score != (wrong ? 0 : 1)) {
            output_abort(&out);
            die("%s: '%s' with completion '%s' is scored %g: generator and verifier disagree", name, t.prompt.text,
                t.completion.text, (double)score);
        }
        if (out.shard ? !output_record(&out, &t, name, fields, &e) : !output_line(&out, &t, name, &e)) {
            output_abort(&out);
            die("%s", e.text);
        }
        free(fields);
        mix.records[which]++;
        wrong_count += wrong;
        if (t.prompt.length + t.completion.length > longest) longest = t.prompt.length + t.completion.length;
    }
    if (out.shard ? !shard_commit(&out.records, &e) : !writer_commit(&out.lines, &e)) {
        output_abort(&out);
        die("%s", e.text);
    }
    fprintf(stderr, "make_tasks: %s: %lld %s", o.output, (long long)o.count, out.shard ? "records" : "lines");
    for (int i = 0; i < mix.count; i++) {
        char name[32];
        option_choice_name(TASK_NAMES, (int)mix.kind[i], name, sizeof name);
        fprintf(stderr, "%s %lld %s", i ? "," : " |", (long long)mix.records[i], name);
    }
    if (o.format == FORMAT_CHAT || o.target) fprintf(stderr, " | %lld deliberately wrong", (long long)wrong_count);
    fprintf(stderr, " | prompt and demonstration up to %zu bytes\n", longest);
    task_free(&t);
    free(seen.slot);
    if (!out.shard) return 0;
    token_list_free(&out.ids);
    chat_template_free(&out.template);
    tool_format_free(&out.format);
    tokenizer_free(&out.tokenizer);
    return 0;
}
