/* generate.c - text generation: completes a prompt or a file of prompts, holds a chat, or serves OpenAI's API.
 *
 *     ./generate -c grpo.bin "2+3="                          prints the completion as it is sampled, and a newline
 *     echo "2+3=" | ./generate -c grpo.bin -                 reads the prompt from standard input
 *     ./generate -c grpo.bin -i tasks.shard -o out.jsonl     completes a file of prompts; one JSON line per completion
 *     ./generate -c sft.bin --chat                           holds a conversation (llmc/terminal)
 *     ./generate -c sft.bin --serve 127.0.0.1:8000           answers requests of OpenAI's API (llmc/serve)
 *
 * In a chat on a terminal, lines are edited by libedit and kept in a history. /help lists the commands: /system TEXT,
 * /retry, /reset, /save FILE. With --tools or --tool-cmd the calls of the model are run, in a chat as well.
 *
 * A prompt is a user message: the model's chat template is applied to it, as in training. With --raw there is no
 * template and the names of special tokens are recognised; use it to let a base model continue a text. An empty raw
 * prompt starts a document. Standard output receives only the completion (with --echo, the prompt and the completion),
 * always as well-formed UTF-8: a character is printed once all its bytes have been sampled, and invalid bytes become
 * U+FFFD. On a terminal, control characters are shown as \x1b and the like. Generation ends at the token that ends an
 * assistant's turn, at the end tokens of the model's generation_config.json, at the end-of-text token, at a text of
 * --stop (which is not printed) or after --max-new-tokens.
 *
 * A file of prompts is a prompt shard, JSON Lines (with "prompt", a text or messages, or with "messages", whose final
 * assistant message is ignored), or a text file with one prompt per line; the format is detected from the contents.
 * Each output line is the input line (for a shard: prompt, task, answer and other fields) with these fields added, in the order
 * of the input:
 *
 *     sample       0 ... n-1, if --num-samples is more than 1
 *     completion   the text, without the stop token or stop text
 *     tokens       the token ids, including the stop token
 *     finished     false if truncated at the limit
 *     logprob      sum of the tokens' log-probabilities at the sampling temperature (greedy: at temperature 1)
 *
 *     index        number of the prompt, from 0: with several samples and with rewards
 *     right, reward, rewards      with --reward, --reward-cmd or --reward-model: the check of the row's task, the reward
 *                  and its parts; null: it could not be scored. --keep chooses among the samples of a prompt by it
 *
 * A row that has a completion loses it with its sample, right, reward and rewards.
 *
 * --prompt-template FILE makes each prompt of the fields of its row (data/ask.h), for hints, critiques, revisions and
 * judges. The row keeps its own prompt; with --output-field NAME the completion becomes its field NAME, and the other fields
 * that are added are NAME_tokens and so on:
 *
 *     ./generate -c sft.bin -i wrong.jsonl --prompt-template hint.txt --reward verify -o hinted.jsonl
 *
 * --continue-as FILE makes a message of the user in the same way, which follows the row's completion: a critique, a revision. The
 * output row's `messages` have the whole conversation up to that message, `completion` what the model answered to it:
 *
 *     ./generate -c sft.bin -i answers.jsonl --continue-as critique.txt -o critiques.jsonl
 *     ./generate -c sft.bin -i critiques.jsonl --continue-as revision.txt -o revisions.jsonl
 *
 * The samples of a file do not depend on --slots: each sample has its own random stream, given by its index.
 */
#include "data/ask.h"                   /* ask_text, Ask, ask_again, ask_close, ... */
#include "data/row_fields.h"            /* row_peek, FIELD_MESSAGES, FIELD_COMPLETION, FIELD_PROMPT */
#include "data/row_messages.h"          /* RowMessages, row_messages_free */
#include "data/rows.h"                  /* Rows, row_encode, row_prompt, row_prompt_texts, ... */
#include "llmc/base/clock.h"            /* clock_seconds */
#include "llmc/base/error.h"            /* die, Error, usage_error, xcalloc, ... */
#include "llmc/base/file_kind.h"        /* FILE_KIND_TEXT, MAGIC_RECORDS, file_kind_text */
#include "llmc/base/io.h"               /* Writer, writer_abort, writer_commit, writer_open, ... */
#include "llmc/base/json_text.h"        /* json_finite */
#include "llmc/base/jsonl.h"            /* Jsonl, jsonl_error, JSONL_BUFFER, JSONL_LINE_MAX, ... */
#include "llmc/base/options.h"          /* OPTION_TEXT, OPTION_FLAG, OPTION_INT, OPTION_GROUP, ... */
#include "llmc/base/program.h"          /* program_stopping, program_bytes, program_start */
#include "llmc/base/terminal.h"         /* terminal_escapes */
#include "llmc/base/text.h"             /* TokenList, TextBuffer, text_free, token_list_extend, ... */
#include "llmc/device.h"                /* DTYPE_AUTO */
#include "llmc/judge/judge.h"           /* Judge, judge_close */
#include "llmc/judge/judge_options.h"   /* JUDGE_OPTIONS, JudgeOptions, judge_defaults */
#include "llmc/judge/judged.h"          /* judge_figures_text, judge_open_rewards */
#include "llmc/model/config.h"          /* gpt2_config_named */
#include "llmc/model/model.h"           /* model_set_longest */
#include "llmc/model/model_text.h"      /* ModelText */
#include "llmc/model/workspace.h"       /* kv_bytes */
#include "llmc/records/shard.h"         /* Shard, RECORD_PROMPT, Record, record_free, ... */
#include "llmc/reward/code_judge.h"     /* CODE_USES, CODE_OPTIONS, code_defaults */
#include "llmc/rollout/episodes.h"      /* episodes_on, episodes_check, episodes_code, EPISODE_OPTIONS, ... */
#include "llmc/rollout/inference.h"     /* Inference, DataFile, inference_few_threads, InferenceOptions, ... */
#include "llmc/rollout/prompts.h"       /* PromptText */
#include "llmc/rollout/rollout.h"       /* RolloutRequest, Completion, Rollout, Sampling, ... */
#include "llmc/rollout/scoring.h"       /* Score, scoring_asked, scoring_close, SCORING_OPTIONS, ... */
#include "llmc/rollout/sequence.h"      /* Sequence, sequence_free, sequence_new, sequence_set */
#include "llmc/rollout/step_rollouts.h" /* StepSolution, StepRollouts, step_rollouts */
#include "llmc/rollout/thinking.h"      /* thinking_on, THINKING_BUDGETS, THINKING_OPTIONS, Thinking, ... */
#include "llmc/rollout/trajectory.h"    /* STOP_COMPLETED */
#include "llmc/tools/code_tool.h"       /* CodeToolOptions */
#include "llmc/tools/tool_format.h"     /* TOOL_PYTHON_TOKENS, tool_format_free, tool_format_of_texts, ... */
#if __has_include(<microhttpd.h>)
#include "llmc/serve/engine.h"  /* ServeEngine, serve_engine_close, serve_engine_open, serve_engine_run */
#include "llmc/serve/http.h"    /* ServeHttp, serve_http_close, serve_http_expire, serve_http_open */
#include "llmc/serve/request.h" /* ServeModel */
#endif
#include "llmc/terminal/answer.h"       /* AnswerEnd, AnswerTurns, answer_run, answer_tell_end, ... */
#include "llmc/terminal/chat.h"         /* Chat, chat_check_text, chat_close, chat_open, ... */
#include "llmc/terminal/conversation.h" /* conversation_prompt */
#include "llmc/terminal/printer.h"      /* printer_tokens, Printer, printer_end, printer_open */
#include "llmc/text/chat.h"             /* ChatMessage, CHAT_CONTINUED */
#include "llmc/text/tokenizer.h"        /* TOKENIZER_CONTINUES, tokenizer_encode, TOKENIZER_DOCUMENT, ... */

static struct {
    InferenceOptions m;
    SamplingOptions s;
    ScoringOptions r;
    JudgeOptions judge;
    const char *input, *output, *system, *template, *continue_as, *shots, *output_field;
    int64_t samples, shot_count;
    int keep;
    bool chat, raw, echo, json, verbose;
    EpisodeOptions episodes;
    ThinkingOptions think;
    int64_t rollouts;
    const char *separator;
    bool search;
    const char *serve, *key_env, *served_name, *second;
    int64_t model_len, queue;
    bool serve_any, prefixes;
} o;

static const Option options[] = {
    // clang-format off
    INFERENCE_MODEL_OPTIONS(o.m),
    OPTION_GROUP("Prompts"),
    OPTION_TEXT("input",       'i', &o.input,   "FILE",
                "prompts: a prompt shard, JSON Lines, or text with one prompt per line"),
    OPTION_FLAG("chat",        0,   &o.chat,
                "hold a conversation; /help lists its commands, Ctrl-C stops a completion"),
    OPTION_TEXT("system",      0,   &o.system,  "TEXT", "system message before the prompt or the conversation"),
    OPTION_FLAG("raw",         0,   &o.raw,     "use the prompt without a chat template"),
    OPTION_TEXT("prompt-template", 0, &o.template, "FILE",
                "make each prompt by this text, in which {field} is a field of the row and {{ a brace"),
    OPTION_TEXT("continue-as", 0, &o.continue_as, "FILE",
                "ask again: after each row's completion comes a message of the user, made as by --prompt-template"),
    OPTION_TEXT("shots",       0,   &o.shots,   "FILE",
                "rows that examples are drawn from, for the part {shot}...{/shot} of --prompt-template and --continue-as"),
    OPTION_INT ("num-shots",   0,   &o.shot_count, 1, 1024, "examples in each prompt"),
    SAMPLING_OPTIONS(o.s),
    OPTION_INT ("num-samples", 0, &o.samples, 1, 4096, "completions per prompt; more than 1 implies --json"),
    EPISODE_OPTIONS(o.episodes),
    THINKING_OPTIONS(o.think),
    SCORING_OPTIONS(o.r),
    JUDGE_OPTIONS(o.judge),
    OPTION_CHOICE("keep",      0,   &o.keep,    "all|best|worst|best-worst",
                "samples of a prompt that are written, by their reward"),
    OPTION_GROUP("Step labels"),
    OPTION_INT ("rollouts-per-step", 0, &o.rollouts, 0, 4096,
                "label the steps of the completions in the rows by this many continuations of each; 0: no labels"),
    OPTION_TEXT("step-separator", 0, &o.separator, "TEXT", "text that ends a step; the default is a newline"),
    OPTION_FLAG("search-first-error", 0, &o.search,
                "look only for the first step from which no continuation is right, by a binary search"),
    OPTION_GROUP("Output"),
    OPTION_TEXT("output",      'o', &o.output,  "FILE", "write JSON lines to this file; .zst is compressed"),
    OPTION_TEXT("output-field", 0,  &o.output_field, "NAME",
                "field of a row that the completion becomes; other names than completion keep the row's own completion"),
    OPTION_FLAG("json",        0,   &o.json,    "print the completion of a single prompt as a JSON line"),
    OPTION_FLAG("echo",        0,   &o.echo,    "print the prompt before its completion"),
    OPTION_FLAG("verbose",     0,   &o.verbose, "print timings"),
    OPTION_GROUP("Server"),
    OPTION_TEXT("serve",       0,   &o.serve,   "HOST:PORT",
                "answer requests of OpenAI's API at this address, and show a page for chats, until a signal ends it"),
    OPTION_TEXT("second-model", 0, &o.second, "FILE",
                "another model for --serve, which requests choose by its name, and the page shows beside the first"),
    OPTION_FLAG("serve-any",   0,   &o.serve_any, "let --serve have an address that other machines can reach"),
    OPTION_TEXT("api-key-env", 0,   &o.key_env, "NAME", "environment variable with the key that requests must have"),
    OPTION_TEXT("served-model-name", 0, &o.served_name, "NAME",
                "the model's name in requests and answers (default: the name of its file)"),
    OPTION_INT ("max-model-len", 0, &o.model_len, 0, 1 << 24,
                "maximum tokens of a prompt and its completion, and of --chat with tools; 0: the model's context, at most 4096"),
    OPTION_FLAG("enable-prefix-caching", 0, &o.prefixes,
                "with --serve: a prompt that begins as an earlier one runs only the rest"),
    OPTION_INT ("max-queued-requests", 0, &o.queue, 1, 1 << 20,
                "requests that may wait for a slot; further ones get status 429"),
    CODE_OPTIONS(o.r.code),
    OPTION_END
    // clang-format on
};

static const OptionAbout about = {
    "-c MODEL [options] PROMPT... | - | -i FILE | --chat | --serve HOST:PORT",
    "Completes a prompt or a file of prompts, holds a conversation, or serves OpenAI's API. The words of a prompt are joined by spaces.\n"
    "- reads the prompt from standard input, without its last newline.\n\n"
    "  ./generate -c grpo.bin \"2+3=\"\n"
    "  ./generate -c grpo.bin -i tasks.shard --num-samples 8 -o samples.jsonl\n"
    "  ./generate -c sft.bin -i tasks.shard --num-samples 8 --reward verify --keep best-worst -o pairs.jsonl\n"
    "  ./generate -c gpt2_124M.bin --tokenizer gpt2/ --raw \"Once upon a time\"\n"
    "  ./generate -c sft.bin --chat --system \"You are terse.\"\n"
    "  ./generate -c sft.bin --serve 127.0.0.1:8000"};

static Inference model;
static Sampling sampling;
static Scoring scoring;
static Judge judge;
static Ask ask;
static Episodes episodes;   /* of --tools and --tool-cmd */
static json_t *shown_tools; /* their schemas, which prompts of texts show; NULL: none are shown */

enum { KEEP_ALL, KEEP_BEST, KEEP_WORST, KEEP_BEST_WORST };

/* Whether completions are written as JSON lines. */
static bool writes_lines(void) { return o.input || o.output || o.json || o.samples > 1; }

/* ---- prompts to tokens ----------------------------------------------------------------------------------------- */

/* Appends a prompt's tokens: the messages in the model's template, or with --raw their text. */
static bool encode(const ChatMessage *messages, int count, TokenList *ids, Error *e) {
    const ModelText *t = &model.text;
    const int how = TOKENIZER_SPECIALS | TOKENIZER_DOCUMENT | TOKENIZER_CONTINUES;
    if (!o.raw) return conversation_prompt(t, messages, count, shown_tools, ids, e);
    for (int i = 0; i < count; i++)
        if (!tokenizer_encode(&t->tokenizer, messages[i].content, strlen(messages[i].content), how, ids, e))
            return false;
    if (!ids->count) token_list_append(ids, t->tokenizer.eos);
    return true;
}

static bool encode_text(const char *text, size_t n, TokenList *ids, Error *e) {
    ChatMessage m[] = {{"system", o.system}, {"user", text}};
    return chat_check_text(text, n, e) && encode(o.system ? m : m + 1, o.system ? 2 : 1, ids, e);
}

static bool check_length(int64_t tokens, Error *e) {
    const int32_t context = model.model.config.context;
    return tokens < context || error_set(e, "the prompt has %lld tokens, at most %d fit the model's context of %d",
                                         (long long)tokens, context - 1, context);
}

/* ---- one prompt ------------------------------------------------------------------------------------------------ */

/* Prints the times of a completion that ended now: of loading, of all new tokens, until the first one, and the rate of the
 * others. start, loaded: when the program and the prompt began. */
static void tell_times(const TokenList *ids, const AnswerEnd *end, double start, double loaded) {
    const double now = clock_seconds(), first = end->drawn ? end->first : now;
    fprintf(
        stderr,
        "loaded in %.1f ms; %d prompt tokens, %lld new tokens in %.1f ms, the first after %.1f ms, %.1f tok/s after it; "
        "%s\n",
        1e3 * (loaded - start), ids->count, (long long)end->drawn, 1e3 * (now - loaded), 1e3 * (first - loaded),
        end->drawn > 1 ? (double)(end->drawn - 1) / (now - first) : 0, end->finished ? "finished" : "truncated");
}

static void one_prompt(const TokenList *ids, double start) {
    Error e;
    Sequence s;
    AnswerEnd end;
    Printer p = printer_open(&model.text.tokenizer);
    const double loaded = clock_seconds();
    if (!sequence_new(&s, &model.model, ids->count + o.s.max_new, &e)) die("%s", e.text);
    if (o.echo && !printer_tokens(&p, ids->ids, ids->count, true, &e)) die("%s", e.text);
    sequence_set(&s, ids->ids, ids->count);
    if (!answer_run(&s, &sampling, 0, &p, NULL, &end, &e)) die("%s", e.text);
    if (!printer_end(&p, &e)) die("%s", e.text);
    if (program_stopping()) die("stopped by a signal after %lld tokens", (long long)end.drawn);
    if (o.verbose) tell_times(ids, &end, start, loaded);
    sequence_free(&s);
}

/* Prints the completion of one prompt whose turns may call tools. what: the prompt, for programs. */
static void one_prompt_with_tools(const TokenList *ids, const PromptText *what) {
    Error e;
    Rollout engine;
    AnswerTurns t;
    Completion c = {0};
    const int context = model.model.config.context, new_max = o.s.max_new < context ? (int)o.s.max_new : context;
    if (!check_length(ids->count, &e)) die("%s", e.text);
    int32_t held;
    if (!episodes_check(&episodes, what, ids->ids, ids->count, "the prompt", 1, &held, &e)) die("%s", e.text);
    model_set_longest(&model.model, ids->count + new_max);
    if (!rollout_new(&engine, &model.model, 1, ids->count, new_max, &e)) die("%s", e.text);
    answer_turns_open(&t, &model.text.tokenizer, &sampling, &episodes.turns);
    engine.turns = &t.turns;
    RolloutRequest q = {
        .prompt = ids->ids, .prompt_len = ids->count - held, .held = held, .samples = 1, .out = &c, .record = what};
    if (o.echo && !printer_tokens(&t.printer, ids->ids, q.prompt_len, true, &e)) die("%s", e.text);
    if (!answer_turns_run(&t, &engine, &q, &e)) die("%s", e.text);
    if (t.stopped) die("stopped by a signal after %lld tokens", (long long)t.drawn);
    if (o.verbose || c.trajectory->stop != STOP_COMPLETED) answer_tell_end(&t, c.trajectory, NULL);
    completion_free(&c);
    answer_turns_close(&t);
    rollout_free(&engine);
}

/* ---- many prompts ---------------------------------------------------------------------------------------------- */

/* Prompts as tokens, each with the JSON object that its output lines extend. */
typedef struct Items {
    int64_t count, capacity;
    int64_t *start; /* (count + 1) into ids */
    TokenList ids;
    json_t **row;     /* (count) */
    PromptText *what; /* (count) owned; only if completions are scored or call tools */
    int32_t *held;    /* (count) last tokens of each that its completions begin with; NULL: none */
    int32_t longest;
} Items;

/* Adds a prompt: the tokens appended to items->ids since the last call. Takes ownership of row. */
static bool items_add(Items *items, json_t *row, Error *e) {
    const int64_t n = items->count;
    if (n + 2 > items->capacity) {
        items->capacity = 2 * items->capacity + 64;
        items->start = (int64_t *)xrealloc(items->start, (size_t)items->capacity, sizeof *items->start);
        items->row = (json_t **)xrealloc(items->row, (size_t)items->capacity, sizeof *items->row);
        items->what = (PromptText *)xrealloc(items->what, (size_t)items->capacity, sizeof *items->what);
        if (!n) items->start[0] = 0;
    }
    items->row[n] = row;
    items->what[n] = (PromptText){0};
    items->start[n + 1] = items->ids.count;
    items->count++;
    const int64_t length = items->ids.count - items->start[n];
    if (length > items->longest) items->longest = (int32_t)length;
    return check_length(length, e);
}

static void items_free(Items *items) {
    for (int64_t i = 0; i < items->count; i++) {
        const PromptText *w = &items->what[i];
        free((char *)w->text), free((char *)w->task), free((char *)w->answer), free((char *)w->fields);
        json_decref(items->row[i]);
    }
    free(items->row), free(items->what), free(items->start), free(items->held), token_list_free(&items->ids);
}

/* Whether what belongs to a prompt besides its tokens is kept: completions are scored or call tools. */
static bool keeps_what(void) { return scoring_asked(&o.r) || episodes_on(&o.episodes); }

/* Copies what belongs to the last prompt besides its tokens. */
static void items_what(Items *items, const char *text, const char *task, const char *answer, const char *fields) {
    if (!keeps_what()) return;
    items->what[items->count - 1] = (PromptText){
        .text = xstrdup(text), .task = xstrdup(task), .answer = xstrdup(answer), .fields = xstrdup(fields)};
}

/* Appends the tokens of the prompt that --prompt-template makes of a row. */
static bool encode_asked(Items *items, const Jsonl *j, json_t *row, Error *e) {
    Error inner;
    TextBuffer text = {0};
    bool ok = ask_text(&ask, j, row, (uint64_t)items->count, &text, e);
    if (ok && !encode_text(text.text, text.length, &items->ids, &inner)) ok = jsonl_error(j, NULL, e, "%s", inner.text);
    text_free(&text);
    return ok;
}

static void add_shard(Items *items, const Shard *s) {
    Error e;
    Record r = {0};
    if (s->kind != RECORD_PROMPT) die("%s: a shard of kind %s, expected prompt", s->name, record_kind_name(s->kind));
    for (int64_t i = 0; i < s->count; i++) {
        if (!shard_record(s, i, &r, &e)) die("%s", e.text);
        json_t *row = inference_prompt_row(&model, &r);
        char where[300];
        snprintf(where, sizeof where, "%.250s: record %lld", s->name, (long long)i);
        const Jsonl at = {.name = where};
        if (o.template && !encode_asked(items, &at, row, &e)) die("%s", e.text);
        if (!o.template) token_list_extend(&items->ids, r.tokens, r.count);
        if (!items_add(items, row, &e)) die("%s: %s", where, e.text);
        items_what(items, r.text, r.task, r.answer, r.fields);
    }
    record_free(&r);
}

/* Appends the tokens of a row's prompt, or of its messages up to the final assistant message. m: of row_prompt(). */
static bool encode_row(Items *items, Rows *rows, const Jsonl *j, json_t *row, const RowMessages *m, Error *e) {
    Error inner;
    const bool whole = row_peek(&rows->fields, row, FIELD_MESSAGES) && !row_peek(&rows->fields, row, FIELD_COMPLETION);
    const int count = m->count - (whole && m->flags[m->count - 1] & CHAT_CONTINUED);
    if (count <= (o.system != NULL))
        return jsonl_error(j, "messages", e, "has nothing before the final assistant message");
    if (!o.raw) return row_encode(rows, j, row, m, count, true, false, &items->ids, NULL, NULL, e);
    return encode(m->items, count, &items->ids, &inner) || jsonl_error(j, NULL, e, "%s", inner.text);
}

/* Removes the fields that describe a row's earlier completion, which a new one replaces. */
static void forget_completion(json_t *row) {
    static const char *const old[] = {"sample", "right", "reward", "rewards", "role", "episode", "end_reward"};
    if (o.output_field || !json_object_get(row, "completion")) return;
    for (size_t i = 0; i < sizeof old / sizeof *old; i++) json_object_del(row, old[i]);
}

/* Lets the row's conversation go on with the message that --continue-as makes of the row. */
static bool continue_row(const Items *items, const Jsonl *j, json_t *row, Error *e) {
    TextBuffer text = {0};
    bool ok = ask_text(&ask, j, row, (uint64_t)items->count, &text, e);
    forget_completion(row);
    ok = ok && ask_again(j, row, text.text, text.length, e);
    text_free(&text);
    return ok;
}

/* Adds one line of JSON: a prompt, or messages up to the final assistant message. With --prompt-template it may have
 * neither. */
static bool add_row(Items *items, const Jsonl *j, json_t *row, Error *e) {
    Rows rows = {.system = o.system, .tokenizer = model.text.tokenizer, .chat = model.text.chat, .tools = shown_tools};
    Error inner;
    json_t *given = NULL;
    RowMessages m = {0};
    const char *task = "", *fields = "";
    if (o.continue_as && !continue_row(items, j, row, e)) return false;
    const bool any = row_peek(&rows.fields, row, FIELD_MESSAGES) || row_peek(&rows.fields, row, FIELD_PROMPT);
    if (!any && !o.template) return jsonl_error(j, NULL, e, "has neither 'prompt' nor 'messages'");
    bool ok = !any || row_prompt(&rows, j, row, &m, &given, e);
    ok = ok && (o.template ? encode_asked(items, j, row, e) : encode_row(items, &rows, j, row, &m, e));
    if (ok && keeps_what()) ok = row_prompt_texts(&rows, j, row, &m, given, &task, &fields, e);
    if (ok && !items_add(items, json_incref(row), &inner)) ok = jsonl_error(j, NULL, e, "%s", inner.text);
    if (ok) items_what(items, rows.text_of_prompt.text, task, rows.text_of_answer.text, fields);
    row_messages_free(&m);
    rows_clear(&rows);
    return ok;
}

static void add_jsonl(Items *items, const DataFile *f) {
    Error e;
    json_t *row;
    Jsonl j = {.limit = JSONL_LINE_MAX};
    int more;
    if (!data_file_reader(f, &j.in, &e)) die("%s", e.text);
    j.name = f->name;
    j.buffer = (char *)xmalloc(JSONL_BUFFER);
    while ((more = jsonl_next(&j, &row, &e)) > 0)
        if (!add_row(items, &j, row, &e)) die("%s", e.text);
    if (more < 0) die("%s", e.text);
    jsonl_close(&j);
}

static void add_lines(Items *items, const DataFile *f) {
    Error e;
    int64_t line = 0;
    for (const char *at = f->bytes, *end = f->bytes + f->n; at < end;) {
        const char *newline = (const char *)memchr(at, '\n', (size_t)(end - at)), *stop = newline ? newline : end;
        size_t n = (size_t)(stop - at);
        line++;
        if (n && at[n - 1] == '\r') n--;
        char *text = xstrndup(at, n);
        const Jsonl place = {.name = f->name, .line = line};
        json_t *row = json_pack("{s:s}", "prompt", text);
        if (n && o.template && !encode_asked(items, &place, row, &e)) die("%s", e.text);
        if (n && ((!o.template && !encode_text(text, n, &items->ids, &e)) || !items_add(items, json_incref(row), &e)))
            die("%s: line %lld: %s", f->name, (long long)line, e.text);
        if (n) items_what(items, text, "", "", "");
        json_decref(row);
        free(text);
        at = stop + 1;
    }
}

static void add_file(Items *items, DataFile *f, const Shard *shard) {
    if (shard) {
        add_shard(items, shard);
    } else {
        inference_need_tokenizer(&model);
        if (f->n >= 3 && !memcmp(f->bytes, "\xEF\xBB\xBF", 3)) { /* a byte-order mark */
            f->n -= 3;
            memmove(f->bytes, f->bytes + 3, f->n + 1);
        }
        const size_t blank = strspn(f->bytes, " \t\r\n");
        if (f->bytes[blank] == '{' || f->bytes[blank] == '[') add_jsonl(items, f);
        else if (o.continue_as) usage_error("--continue-as: needs rows of JSON with completions, not lines of text");
        else add_lines(items, f);
    }
    if (!items->count) die("%s: %s", f->name, shard ? "the shard is empty" : "it contains no prompts");
}

/* Sets a field of an output line. Its name is NAME_key with --output-field NAME. */
static void set_field(json_t *row, const char *key, json_t *value) {
    char name[300];
    snprintf(name, sizeof name, "%s%s%s", o.output_field ? o.output_field : "", o.output_field ? "_" : "", key);
    json_object_set_new(row, name, value);
}

/* Sets the fields of a score. */
static void set_score(json_t *row, const Score *score) {
    json_t *parts = json_object();
    set_field(row, "right", isnan(score->right) ? json_null() : json_boolean(score->right > 0.5));
    set_field(row, "reward", json_finite(score->reward));
    for (int k = 0; k < scoring.rewards.count; k++)
        json_object_set_new(parts, scoring.rewards.name[k], json_finite(score->parts[k]));
    if (scoring.rewards.count) set_field(row, "rewards", parts);
    else json_decref(parts);
}

/* score: NULL without rewards. */
static bool write_completion(Writer *w, json_t *item, int64_t index, int64_t sample, const Completion *c,
                             const Score *score, Error *e) {
    json_t *row = json_copy(item), *tokens = json_array();
    double logprob = 0;
    forget_completion(row);
    for (int32_t i = 0; i < c->count; i++) {
        logprob += c->logp[i];
        json_array_append_new(tokens, json_integer(c->tokens[i]));
    }
    if (o.samples > 1 || score) set_field(row, "index", json_integer(index));
    if (o.samples > 1) set_field(row, "sample", json_integer(sample));
    json_object_set_new(row, o.output_field ? o.output_field : "completion",
                        inference_completion_text(&model, &sampling, c));
    set_field(row, "tokens", tokens);
    set_field(row, "finished", json_boolean(c->finished));
    set_field(row, "logprob", json_real(logprob));
    if (thinking_on(&o.think)) thinking_row(row, c);
    else episode_row(row, c);
    if (score) set_score(row, score);
    const bool ok = json_line(w, row, e);
    json_decref(row);
    return ok;
}

/* Sums over the samples with a reward and over those that can be right or wrong. */
static struct {
    int64_t rewarded, checked, right, unscored, none; /* none: prompts of which no sample could be scored */
    double reward;
} tally;

/* Sets keep[k]: whether sample k of n is written. Of equal rewards the first is the best and the worst. */
static void choose(const Score *score, int64_t n, bool *keep) {
    int64_t best = -1, worst = -1;
    for (int64_t k = 0; k < n; k++) {
        const float reward = score ? score[k].reward : NAN;
        keep[k] = o.keep == KEEP_ALL;
        if (!score) continue;
        tally.checked += !isnan(score[k].right);
        tally.right += score[k].right > 0.5;
        tally.unscored += isnan(reward);
        if (isnan(reward)) continue;
        tally.rewarded++;
        tally.reward += reward;
        if (best < 0 || reward > score[best].reward) best = k;
        if (worst < 0 || reward < score[worst].reward) worst = k;
    }
    tally.none += score && best < 0;
    if (o.keep != KEEP_WORST && o.keep != KEEP_ALL && best >= 0) keep[best] = true;
    if (o.keep >= KEEP_WORST && worst >= 0) keep[worst] = true;
}

/* Scores the completions of a prompt and writes their lines. */
static bool write_prompt(Writer *w, const Items *items, int64_t index, const RolloutRequest *q, Error *e) {
    const int64_t n = q->samples;
    Score *score = scoring.on ? (Score *)xcalloc((size_t)n, sizeof *score) : NULL;
    bool *keep = (bool *)xcalloc((size_t)n, sizeof *keep), ok = true;
    if (score) ok = scoring_run(&scoring, &model.text, &sampling, &items->what[index], q, score, e);
    if (ok) choose(score, n, keep);
    for (int64_t k = 0; k < n; k++)
        if (ok && keep[k])
            ok = write_completion(w, items->row[index], index, k, &q->out[k], score ? &score[k] : NULL, e);
    free(score), free(keep);
    return ok;
}

static Thinking thinking; /* of --think-tokens */

/* Completes prompts [first, first + count) and writes their lines. */
static bool complete(Rollout *engine, Writer *w, const Items *items, int64_t first, int64_t count, Error *e) {
    const int64_t n = o.samples;
    RolloutRequest *q = (RolloutRequest *)xcalloc((size_t)count, sizeof *q);
    Completion *out = (Completion *)xcalloc((size_t)(count * n), sizeof *out);
    for (int64_t i = 0; i < count; i++) {
        const int64_t start = items->start[first + i];
        const int32_t held = items->held ? items->held[first + i] : 0;
        q[i] = (RolloutRequest){.prompt = items->ids.ids + start,
                                .prompt_len = (int32_t)(items->start[first + i + 1] - start) - held,
                                .held = held,
                                .samples = (int32_t)n,
                                .id = (uint64_t)((first + i) * n),
                                .out = out + i * n,
                                .record = &items->what[first + i]};
    }
    bool ok = rollout_run(engine, &sampling, q, count, NULL, NULL, e);
    for (int64_t i = 0; i < count; i++) ok = ok && write_prompt(w, items, first + i, &q[i], e);
    for (int64_t i = 0; i < count * n; i++) completion_free(&out[i]);
    free(q), free(out);
    return ok && (w->zstd || w->temporary || writer_flush(w, e)); /* flush a pipe after each chunk */
}

/* Opens what scores the completions, and checks that it can. */
static void open_scoring(const Items *items, int32_t max_new) {
    Error e, note = {0};
    int64_t possible = 0;
    if (!scoring_open(&scoring, &o.r, &model, (uint64_t)o.s.seed, items->longest, max_new, &note, &e))
        usage_error("%s", e.text);
    if (note.text[0]) warn("%s", note.text);
    if (!judge_open_rewards(&judge, &o.judge, &scoring.rewards, options, model.backend, model.device,
                            (uint64_t)o.s.seed, &e))
        die("%s", e.text);
    for (int64_t i = 0; i < items->count && scoring.on; i++) {
        bool one;
        if (!scoring_possible(&scoring, &items->what[i], &one, &e)) die("prompt %lld: %s", (long long)i, e.text);
        possible += one;
    }
    const OptionUse use[] = {CODE_USES(o.r.code, scoring.code.open, episodes_code(&o.episodes), o.r.reward_sandbox,
                                       "used only for prompts of the task code")};
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    if (scoring.on && !possible) die("--reward: no prompt has an answer that the reward can check");
    if (scoring.on && possible < items->count)
        warn("%lld of %lld prompts have no answer that the reward can check; their rewards are null",
             (long long)(items->count - possible), (long long)items->count);
}

/* Prints the figures of the rewards. */
static void report_scores(void) {
    if (!scoring.on) return;
    fprintf(stderr, "reward %.4f", tally.rewarded ? tally.reward / (double)tally.rewarded : NAN);
    if (tally.checked) fprintf(stderr, ", %.2f %% right", 100.0 * (double)tally.right / (double)tally.checked);
    if (tally.unscored) fprintf(stderr, ", %lld not scored", (long long)tally.unscored);
    if (tally.none && o.keep != KEEP_ALL)
        fprintf(stderr, ", %lld prompt%s left out without a scored sample", (long long)tally.none, PLURAL(tally.none));
    fputc('\n', stderr);
    if (!judge.open) return;
    TextBuffer figures = {0};
    judge_figures_text(&judge.sums, &figures);
    fprintf(stderr, "judge %s\n", figures.text);
    text_free(&figures);
}

/* Opens budget forcing. Returns the maximum number of tokens of a completion. */
static int open_thinking(int32_t longest) {
    Error e;
    int32_t budget[THINKING_BUDGETS];
    if (!thinking_budgets(&o.think, budget, &e) ||
        !thinking_open(&thinking, &o.think, budget[0], &model.text, &sampling, model.model.config.context, longest, &e))
        usage_error("%s", e.text);
    return sampling.max_new = thinking.new_max;
}

/* Checks the rows of prompts whose completions may call tools. */
static void check_items(Items *items) {
    Error e;
    items->held = (int32_t *)xcalloc((size_t)items->count, sizeof *items->held);
    for (int64_t i = 0; i < items->count; i++)
        if (!episodes_check(&episodes, &items->what[i], items->ids.ids + items->start[i],
                            (int32_t)(items->start[i + 1] - items->start[i]), o.input ? o.input : "-", i + 1,
                            &items->held[i], &e))
            die("%s", e.text);
}

static void many_prompts(Items *items) {
    Error e;
    Writer w;
    Rollout engine;
    const int64_t all = items->count * o.samples;
    const int64_t most = o.samples > o.s.slots ? o.samples : o.s.slots;
    const int32_t context = model.model.config.context;
    const int slots = (int)(all < o.s.slots ? all : o.s.slots);
    inference_few_threads(&model, slots);
    int new_max = o.s.max_new < context ? (int)o.s.max_new : context;
    if (thinking_on(&o.think)) new_max = open_thinking(items->longest);
    const int64_t drawable = rollout_rows(slots, items->longest) - slots;
    if (o.samples > drawable)
        usage_error("--num-samples: %lld samples per prompt, at most %lld can be sampled at once with --slots %d",
                    (long long)o.samples, (long long)drawable, slots);
    open_scoring(items, new_max);
    if (episodes_on(&o.episodes)) check_items(items);
    if (!writer_open(&w, o.output ? o.output : "-", &e)) die("%s", e.text);
    model_set_longest(&model.model, items->longest + new_max);
    if (!rollout_new(&engine, &model.model, slots, items->longest, new_max, &e)) {
        writer_abort(&w);
        die("%s; lower --slots", e.text);
    }
    if (episodes_on(&o.episodes)) engine.turns = &episodes.turns;
    if (thinking_on(&o.think)) engine.turns = &thinking.turns;
    const double start = clock_seconds();
    const int64_t chunk = 4 * most / o.samples;
    int64_t done = 0;
    while (done < items->count && !program_stopping()) {
        const int64_t n = items->count - done < chunk ? items->count - done : chunk;
        if (!complete(&engine, &w, items, done, n, &e)) {
            writer_abort(&w);
            die("%s", e.text);
        }
        done += n;
        if (terminal_escapes(STDERR_FILENO) && o.output)
            fprintf(stderr, "\r%lld of %lld prompts, %.0f tok/s\033[K", (long long)done, (long long)items->count,
                    (double)engine.tokens / (clock_seconds() - start));
    }
    if (!writer_commit(&w, &e)) die("%s", e.text);
    const double seconds = clock_seconds() - start;
    if (o.input)
        fprintf(stderr, "%s%lld prompt%s, %lld completion%s, %lld tokens in %.2f s, %.0f tok/s\n",
                terminal_escapes(STDERR_FILENO) && o.output ? "\r\033[K" : "", (long long)done, PLURAL(done),
                (long long)(done * o.samples), PLURAL(done * o.samples), (long long)engine.tokens, seconds,
                (double)engine.tokens / seconds);
    report_scores();
    judge_close(&judge);
    scoring_close(&scoring);
    thinking_close(&thinking);
    rollout_free(&engine);
    if (done < items->count)
        die("stopped by a signal after %lld of %lld prompts; their lines are written", (long long)done,
            (long long)items->count);
}

/* ---- labels of steps ------------------------------------------------------------------------------------------- */

/* The steps of a row's completion: their texts, and the tokens of the prompt and the steps. */
typedef struct RowSteps {
    json_t *texts;
    TokenList ids;
    int32_t *end;
} RowSteps;

/* Splits a row's completion into steps. A step ends with the last of several separators. */
static void read_steps(const Items *items, int64_t i, RowSteps *r) {
    Error e;
    const char *text = json_string_value(json_object_get(items->row[i], "completion"));
    const size_t gap = strlen(o.separator);
    if (!text || !*text) die("row %lld: it has no completion whose steps could be labelled", (long long)i + 1);
    *r = (RowSteps){.texts = json_array()};
    token_list_extend(&r->ids, items->ids.ids + items->start[i], (int32_t)(items->start[i + 1] - items->start[i]));
    for (const char *at = text; *at;) {
        const char *end = strstr(at, o.separator);
        while (end && end[gap] && !strncmp(end + gap, o.separator, gap)) end += gap;
        const size_t n = end ? (size_t)(end - at) : strlen(at);
        const size_t steps = json_array_size(r->texts);
        json_array_append_new(r->texts, json_stringn(at, n));
        r->end = (int32_t *)xrealloc(r->end, steps + 1, sizeof *r->end);
        if (!tokenizer_encode(&model.text.tokenizer, at, n, TOKENIZER_CONTINUES, &r->ids, &e) ||
            (end && !tokenizer_encode(&model.text.tokenizer, o.separator, gap, TOKENIZER_CONTINUES, &r->ids, &e)))
            die("row %lld: %s", (long long)i + 1, e.text);
        r->end[steps] = r->ids.count;
        at += end ? n + gap : n;
    }
}

/* Writes a row with its steps, labels and values instead of the completion. */
static void write_steps(Writer *w, const json_t *item, const RowSteps *r, const StepSolution *s) {
    static const char *const old[] = {"completion", "tokens", "finished", "logprob", "index",
                                      "sample",     "right",  "reward",   "rewards"};
    Error e;
    json_t *row = json_copy((json_t *)item), *labels = json_array(), *values = json_array();
    for (size_t i = 0; i < sizeof old / sizeof *old; i++) json_object_del(row, old[i]);
    for (int k = 0; k < s->steps; k++) {
        json_array_append_new(labels, json_boolean(o.search ? k < s->error : s->value[k] > 0));
        json_array_append_new(values, json_real(s->value[k]));
    }
    json_object_set(row, "completions", r->texts);
    json_object_set_new(row, "labels", labels);
    if (o.search) json_decref(values);
    else json_object_set_new(row, "values", values);
    if (!json_line(w, row, &e)) {
        writer_abort(w);
        die("%s", e.text);
    }
    json_decref(row);
}

/* Labels the steps of rows [first, first + n) and writes them. Returns the number of rows that were left out. */
static int64_t label_rows(StepRollouts *x, Writer *w, const Items *items, const RowSteps *rows, int64_t first,
                          int64_t n) {
    Error e;
    StepSolution *s = (StepSolution *)xcalloc((size_t)n, sizeof *s);
    int count = 0;
    int64_t *of = (int64_t *)xcalloc((size_t)n, sizeof *of), left_out = n;
    for (int64_t i = first; i < first + n; i++) {
        if (rows[i].ids.count >= model.model.config.context) continue;
        of[count] = i;
        s[count++] = (StepSolution){.tokens = rows[i].ids.ids,
                                    .prompt_len = (int32_t)(items->start[i + 1] - items->start[i]),
                                    .end = rows[i].end,
                                    .steps = (int)json_array_size(rows[i].texts),
                                    .what = &items->what[i]};
    }
    if (!step_rollouts(x, s, count, o.search, &e)) {
        writer_abort(w);
        die("%s", e.text);
    }
    for (int k = 0; k < count; k++) {
        bool known = s[k].error >= 0;
        for (int i = 0; i < s[k].steps && !o.search; i++) known = known && !isnan(s[k].value[i]);
        if (known) write_steps(w, items->row[of[k]], &rows[of[k]], &s[k]);
        left_out -= known;
        tally.checked += known ? s[k].steps : 0;
        tally.right += known ? s[k].error : 0;
        free(s[k].value);
    }
    free(s), free(of);
    return left_out;
}

static void label_steps(const Items *items) {
    Error e;
    Writer w;
    Rollout engine;
    enum { CHUNK = 64 };
    RowSteps *rows = (RowSteps *)xcalloc((size_t)items->count, sizeof *rows);
    int32_t longest = 1;
    const int32_t context = model.model.config.context;
    const int new_max = o.s.max_new < context ? (int)o.s.max_new : context;
    for (int64_t i = 0; i < items->count; i++) {
        read_steps(items, i, &rows[i]);
        if (rows[i].ids.count < context && rows[i].ids.count > longest) longest = rows[i].ids.count;
    }
    const int slots = (int)(o.rollouts > o.s.slots ? o.rollouts : o.s.slots);
    inference_few_threads(&model, slots);
    open_scoring(items, new_max);
    if (!writer_open(&w, o.output ? o.output : "-", &e)) die("%s", e.text);
    model_set_longest(&model.model, longest + new_max);
    if (!rollout_new(&engine, &model.model, slots, longest, new_max, &e)) {
        writer_abort(&w);
        die("%s; lower --slots", e.text);
    }
    StepRollouts x = {
        .engine = &engine, .sampling = &sampling, .text = &model.text, .scoring = &scoring, .samples = (int)o.rollouts};
    int64_t left_out = 0;
    for (int64_t i = 0; i < items->count && !program_stopping(); i += CHUNK)
        left_out += label_rows(&x, &w, items, rows, i, items->count - i < CHUNK ? items->count - i : CHUNK);
    if (program_stopping()) {
        writer_abort(&w);
        die("stopped by a signal");
    }
    if (!writer_commit(&w, &e)) die("%s", e.text);
    fprintf(
        stderr,
        "%lld steps, %.1f %% before the first bad one; %lld prefixes continued %lld times, %lld of them equal to another one\n",
        (long long)tally.checked, 100.0 * (double)tally.right / (double)tally.checked, (long long)x.prefixes,
        (long long)o.rollouts, (long long)x.shared);
    if (left_out)
        warn("%lld of %lld rows were left out: they do not fit the context of %d, or cannot be checked",
             (long long)left_out, (long long)items->count, context);
    for (int64_t i = 0; i < items->count; i++) {
        json_decref(rows[i].texts);
        token_list_free(&rows[i].ids);
        free(rows[i].end);
    }
    free(rows);
    scoring_close(&scoring);
    rollout_free(&engine);
}

/* ---- tools and chats ------------------------------------------------------------------------------------------- */

static void open_tools(void) {
    Error e;
    const CodeToolOptions code = {o.r.code.sandbox, o.r.code.timeout};
    const int slots = writes_lines() ? (int)o.s.slots : 1;
    if (!episodes_open(&episodes, &o.episodes, &code, &model.text, slots, "generate", o.s.seed, &e))
        die("%s: %s", episodes_option(&o.episodes), e.text);
    shown_tools = episodes_shown(&episodes);
}

/* The tokens that a conversation with tools may have: what the engine allocates. */
static int32_t conversation_length(int32_t context) {
    const int64_t asked = o.model_len ? o.model_len : 4096;
    if (o.model_len > context)
        warn("--max-model-len %lld: the model's context is %d, which is used", (long long)o.model_len, context);
    if (asked < 2) usage_error("--max-model-len: %lld is less than 2", (long long)asked);
    return asked < context ? (int32_t)asked : context;
}

static void hold_chat(void) {
    Error e;
    const bool tools = episodes_on(&o.episodes);
    Chat c = {.model = &model.model,
              .text = &model.text,
              .how = &sampling,
              .episodes = tools ? &episodes : NULL,
              .schemas = shown_tools,
              .length = tools ? conversation_length(model.model.config.context) : model.model.config.context};
    if (!chat_open(&c, o.system, &e) || !chat_run(&c, &e)) die("%s", e.text);
    chat_close(&c);
}

/* ---- the server ------------------------------------------------------------------------------------------------ */

#if __has_include(<microhttpd.h>)

/* A model that is served. */
typedef struct Served {
    Inference *from;
    ServeModel m;
    ServeEngine engine;
    char *name;
} Served;

/* The name of a model's file, without its folders. The caller frees it. */
static char *served_name(const char *path) {
    if (!strcmp(path, "-")) return xstrdup("model");
    const char *end = path + strlen(path);
    while (end > path && end[-1] == '/') end--;
    const char *start = end;
    while (start > path && start[-1] != '/') start--;
    return start < end ? utf8_copy(strndupa(start, (size_t)(end - start))) : xstrdup("model");
}

/* Opens the engine of a model. s, name: its settings, and its name, which it takes over. */
static void open_served(Served *v, Inference *from, const Sampling *s, char *name) {
    Error e;
    const int32_t length = conversation_length(from->model.config.context);
    const char *format = o.episodes.format;
    *v = (Served){.from = from, .name = name};
    v->m = (ServeModel){
        .name = name, .text = &from->text, .vocab = from->model.config.vocab, .length = length, .standard = *s};
    if (v->m.standard.max_new > length) v->m.standard.max_new = length;
    if (!format && from->text.present) format = tool_format_of_texts(&from->text.chat);
    if (format && !tool_format_open(&v->m.format, format, &e)) usage_error("--tool-format: %s", e.text);
    if (format && v->m.format.kind == TOOL_PYTHON_TOKENS)
        usage_error("--tool-format python-tokens: a server reads calls from texts, and these are special tokens");
    v->m.has_format = format != NULL;
    model_set_longest(&from->model, v->m.length);
    if (!serve_engine_open(&v->engine, &v->m, &from->model, (int)o.s.slots, (int)o.queue, (uint64_t)o.s.seed, &e))
        die("%s", e.text);
    v->engine.no_prefixes = !o.prefixes;
}

static void close_served(Served *v) {
    const ServeEngine *x = &v->engine;
    fprintf(stderr,
            "%s: %lld requests, %lld completions of %lld tokens; %lld of %lld tokens of prompts were in the cache\n",
            v->name, (long long)x->jobs, (long long)x->samples, (long long)x->tokens, (long long)x->cached_tokens,
            (long long)x->prompt_tokens);
    serve_engine_close(&v->engine);
    tool_format_free(&v->m.format);
    free(v->name);
}

static void say_served(const Served *v, const char *address) {
    char size[16];
    const size_t bytes = kv_bytes(&v->from->model.config, v->from->model.backend, (int)o.s.slots * v->m.length);
    fprintf(stderr,
            "%s is served at http://%s/v1, with a page for chats at http://%s/: %lld slots of %d tokens, cache %s\n",
            v->name, address, address, (long long)o.s.slots, v->m.length, program_bytes(size, (double)bytes));
}

/* Opens the model of --second-model, which has the options of the first one but its adapter. */
static void open_second(Served *v, Inference *from, const char *first) {
    InferenceOptions how = o.m;
    how.checkpoint = o.second;
    how.adapter = NULL;
    inference_open(from, &how, o.s.seed, NULL);
    const Sampling s = inference_sampling(from, &o.s);
    char *name = served_name(o.second);
    if (!strcmp(name, first)) { /* files of one name in two folders */
        free(name);
        name = utf8_copy(o.second);
    }
    if (!strcmp(name, first)) die("--second-model: both models have the name '%.100s'; give --served-model-name", name);
    open_served(v, from, &s, name);
}

static bool serve_stopping(void *context) {
    (void)context;
    return program_stopping();
}

static void serve(void) {
    Error e;
    static Served first, second;
    static Inference other;
    ServeHttp http = {.engine = &first.engine, .any = o.serve_any};
    if (o.key_env && (!(http.key = getenv(o.key_env)) || !*http.key))
        die("--api-key-env: the environment has no variable %s with a key", o.key_env);
    if (o.serve_any && !http.key)
        warn("--serve-any without --api-key-env: whoever reaches the server can use the model");
    open_served(&first, &model, &sampling, o.served_name ? xstrdup(o.served_name) : served_name(o.m.checkpoint));
    if (o.second) {
        open_second(&second, &other, first.name);
        first.engine.other = &second.engine;
        first.m.other = second.name;
    }
    inference_few_threads(&model, (int)o.s.slots);
    if (!serve_http_open(&http, o.serve, &e)) die("--serve: %s", e.text);
    say_served(&first, http.address);
    if (o.second) say_served(&second, http.address);
    const bool ok = serve_engine_run(&first.engine, serve_stopping, serve_http_expire, &http, &e);
    serve_http_close(&http);
    close_served(&first);
    if (o.second) close_served(&second);
    if (o.second) inference_close(&other);
    if (!ok) die("%s", e.text);
}

#else

static void serve(void) {
    die("--serve: this program was built without libmicrohttpd; install libmicrohttpd-dev and build it again");
}

#endif

/* ---- the program ----------------------------------------------------------------------------------------------- */

/* Reads the prompt as one text, from the words of the command line or from standard input. */
static void read_prompt(int argc, char **argv, int first, TextBuffer *text) {
    Error e;
    text_clear(text);
    if (argc == first + 1 && !strcmp(argv[first], "-")) {
        size_t n;
        char *input = file_slurp("-", TOKENIZER_TEXT_MAX - 1, &n, &e);
        if (!input) die("%s", e.text);
        text_append(text, input, n && input[n - 1] == '\n' ? n - 1 : n);
        free(input);
    } else {
        for (int i = first; i < argc; i++) text_format(text, i > first ? " %s" : "%s", argv[i]);
    }
}

/* Checks the options of --rollouts-per-step. */
static void check_steps(void) {
    const bool on = o.rollouts > 0;
    const OptionUse use[] = {{&o.separator, on, "used only with --rollouts-per-step"},
                             {&o.search, on, "used only with --rollouts-per-step"},
                             {&o.samples, !on, "not used with --rollouts-per-step, whose number of samples is its own"},
                             {&o.keep, !on, "not used with --rollouts-per-step"},
                             {&o.output_field, !on, "not used with --rollouts-per-step"},
                             {&o.template, !on, "not used with --rollouts-per-step"}};
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    if (!on) return;
    if (!o.input) usage_error("--rollouts-per-step: reads rows with completions, -i");
    if (!o.r.reward) usage_error("--rollouts-per-step: needs --reward verify, which checks the continuations");
    if (thinking_on(&o.think) || episodes_on(&o.episodes))
        usage_error("--rollouts-per-step: cannot be used with --think-tokens, --tools or --tool-cmd");
    if (o.s.temperature == 0 && o.rollouts > 1)
        usage_error("--temperature 0: greedy continuations of one prefix are identical; give --rollouts-per-step 1");
    if (!*o.separator) usage_error("--step-separator: the text is empty");
}

static void check_usage(int argc, char **argv, int first) {
    const bool words = first < argc, standard = argc == first + 1 && !strcmp(argv[first], "-");
    if (!o.m.checkpoint) usage_error("-c/--checkpoint is required");
    if (words + o.chat + (o.input != NULL) + (o.serve != NULL) > 1)
        usage_error("a prompt, -i/--input, --chat and --serve: give only one of them");
    if (!words && !o.chat && !o.input && !o.serve)
        usage_error("a prompt is required: give words, -, -i/--input FILE, --chat or --serve");
    if (!strcmp(o.m.checkpoint, "-") && (standard || o.chat || (o.input && !strcmp(o.input, "-"))))
        usage_error("-c -: standard input contains the model, so it cannot contain prompts");
    if (o.chat && o.raw) usage_error("--chat and --raw: give only one of them");
    if (o.chat && (writes_lines() || o.echo))
        usage_error("--chat: cannot be used with -o, --json, --echo or --num-samples");
    if (o.serve && (writes_lines() || o.echo || o.raw || o.system))
        usage_error(
            "--serve: cannot be used with -o, --json, --num-samples, --echo, --raw or --system: requests say that");
    if (o.serve && o.s.repetition_penalty != 1) usage_error("--serve: has no --repetition-penalty");
    const bool many = writes_lines(), scored = scoring_asked(&o.r);
    if (o.echo && many) usage_error("--echo: JSON lines already contain the prompt");
    const OptionUse use[] = {
        {&o.m.chat_template, !o.raw, "not used with --raw"},
        {&o.template, o.input != NULL, "used only with -i"},
        {&o.continue_as, o.input != NULL, "used only with -i"},
        {&o.shots, o.template || o.continue_as, "used only with --prompt-template and --continue-as"},
        {&o.shot_count, o.shots != NULL, "used only with --shots"},
        {&o.output_field, many, "used only for JSON lines"},
        {&o.r.reward, many, "used only for JSON lines"},
        {&o.r.reward_cmd, many, "used only for JSON lines"},
        {&o.r.reward_model, many, "used only for JSON lines"},
        {&o.r.reward_timeout, o.r.reward_cmd != NULL, "used only with --reward-cmd"},
        {&o.judge.file, many && o.r.reward, "used only with --reward judge=..."},
        {&o.r.reward_sandbox, o.r.reward_cmd != NULL, "used only with --reward-cmd"},
        {&o.r.reward_workers, o.r.reward_cmd != NULL, "used only with --reward-cmd"},
        {&o.r.reward_group, o.r.reward_cmd != NULL, "used only with --reward-cmd"},
        {&o.r.scope, scored && episodes_on(&o.episodes),
         "used only with --tools or --tool-cmd, and --reward or the like"},
        {&o.judge.url, many && o.r.reward, "used only with --reward judge=..."},
        CODE_USES(o.r.code, scored, episodes_code(&o.episodes), false, "used only with --reward or the like"),
        {&o.r.aggregation, o.r.reward_model != NULL, "used only with --reward-model"},
        {&o.keep, scored && o.samples > 1, "used only for several samples that --reward or the like scores"},
        {&o.s.slots, words + o.chat == 0 || many, "used only for several completions"},
        {&o.episodes.tools, !o.serve, "not used with --serve, whose requests bring tools that their sender runs"},
        {&o.episodes.commands, !o.serve, "not used with --serve, whose requests bring tools that their sender runs"},
        {&o.episodes.aggregator, many, "used only for JSON lines"},
        {&o.think.tokens, many, "used only for JSON lines"},
        {&o.verbose, !many && !o.chat && !o.serve, "used only for one printed prompt"},
        {&o.serve_any, o.serve != NULL, "used only with --serve"},
        {&o.key_env, o.serve != NULL, "used only with --serve"},
        {&o.served_name, o.serve != NULL, "used only with --serve"},
        {&o.model_len, o.serve || (o.chat && episodes_on(&o.episodes)), "used only with --serve, or --chat with tools"},
        {&o.queue, o.serve != NULL, "used only with --serve"},
        {&o.prefixes, o.serve != NULL, "used only with --serve"},
        {&o.second, o.serve != NULL, "used only with --serve"},
        {&o.s.seed, o.s.temperature > 0 || o.shots || o.serve || gpt2_config_named(o.m.checkpoint),
         "used only with --temperature above 0"},
    };
    options_refuse_unused(options, use, sizeof use / sizeof *use);
    episodes_refuse_unused(&o.episodes, options);
    thinking_refuse_unused(&o.think, options, false);
    check_steps();
    if (thinking_on(&o.think) && episodes_on(&o.episodes))
        usage_error("--think-tokens and --tools, --tool-cmd: give only one of them");
    if (thinking_on(&o.think) && strchr(o.think.tokens, ','))
        usage_error("--think-tokens: give one budget; evaluate runs several");
    sampling_refuse_unused(&o.s, options, o.s.temperature > 0 || o.serve, "used only with --temperature above 0");
    if (o.samples > 1 && o.s.temperature == 0)
        usage_error("--temperature 0: greedy completions of one prompt are identical; omit --num-samples");
    if (o.r.reward_model && (o.r.reward || o.r.reward_cmd))
        usage_error("--reward-model and --reward: give only one of them");
    if (o.output_field && (!*o.output_field || strlen(o.output_field) > 200))
        usage_error("--output-field: the name of a field has 1 to 200 bytes");
    if (o.system && o.raw) usage_error("--system and --raw: give only one of them");
    if (o.system && utf8_valid(o.system, strlen(o.system)) < strlen(o.system)) usage_error("--system: not UTF-8");
}

int main(int argc, char **argv) {
    Error e;
    o.m.dtype = DTYPE_AUTO;
    o.s = sampling_options(0.8, 256);
    o.episodes = episode_defaults();
    o.think = thinking_defaults();
    o.separator = "\n";
    o.samples = 1;
    o.shot_count = 3;
    o.r.reward_timeout = 60;
    o.judge = judge_defaults();
    o.r.reward_workers = 1;
    o.r.code = code_defaults();
    o.queue = 64;
    o.prefixes = true;
    const int first = options_parse(options, &about, argc, argv);
    if (o.serve && !option_given(&o.s.temperature)) o.s.temperature = 1; /* the default of the API */
    o.episodes.format_alone = o.serve != NULL;
    check_usage(argc, argv, first);
    program_start();
    const double start = clock_seconds();

    DataFile file = {.in.fd = -1};
    Shard shard = {0};
    bool is_shard = false;
    if (o.input) {
        if (!data_file_open(&file, o.input, &e)) die("%s", e.text);
        is_shard = file.magic == MAGIC_RECORDS;
        char text[FILE_KIND_TEXT];
        if (!is_shard && file_kind_text(file.bytes, file.n, text))
            die("%s: this is %s, expected a prompt shard, JSON Lines or text", file.name, text);
        if (is_shard && !shard_read(&shard, &file.in, &e)) die("%s", e.text);
        if (is_shard && !o.template && (o.system || o.raw))
            usage_error("--system and --raw: cannot be used with a shard, whose prompts are already tokens");
    }
    inference_open(&model, &o.m, o.s.seed, is_shard ? &shard : NULL);
    if (!o.serve && (!is_shard || o.template)) inference_need_tokenizer(&model);
    if (o.continue_as && (is_shard || o.template || o.raw))
        usage_error(
            "--continue-as: needs rows of JSON with completions, and cannot be combined with --prompt-template and --raw");
    const char *asks = o.template ? o.template : o.continue_as;
    if (asks && !ask_open(&ask, asks, o.shots, o.shot_count, (uint64_t)o.s.seed, &e)) die("%s", e.text);
    sampling = inference_sampling(&model, &o.s);
    sampling.scope = (RewardScope)o.r.scope;
    if (episodes_on(&o.episodes) && !o.serve) open_tools();

    const bool many = writes_lines();
    if (!many && !o.serve) inference_few_threads(&model, 1);
    if (o.serve) {
        serve();
    } else if (o.chat) {
        hold_chat();
    } else {
        Items items = {0};
        TextBuffer text = {0};
        if (o.input) {
            add_file(&items, &file, is_shard ? &shard : NULL);
        } else {
            read_prompt(argc, argv, first, &text);
            if (!encode_text(text.text, text.length, &items.ids, &e) ||
                !items_add(&items, json_pack("{s:s}", "prompt", text.text), &e))
                die("%s", e.text);
            items_what(&items, text.text, "", "", "");
        }
        if (o.rollouts) label_steps(&items);
        else if (many) many_prompts(&items);
        else if (episodes_on(&o.episodes)) one_prompt_with_tools(&items.ids, &items.what[0]);
        else one_prompt(&items.ids, start);
        items_free(&items), text_free(&text);
        ask_close(&ask);
    }
    if (episodes_on(&o.episodes) && !o.serve) episodes_close(&episodes);
    json_decref(shown_tools);
    if (is_shard) shard_close(&shard);
    data_file_close(&file);
    inference_close(&model);
    return 0;
}
