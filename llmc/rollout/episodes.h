/* episodes.h - the environment of completions of several turns: runs the calls of a model's turns and writes their
 * results.
 *
 * When the model ends a turn, its text is read (../tools/tool_format.h). A turn without a call completes the trajectory.
 * The calls of a turn are run, and their results, in the order of the calls, become the observed tokens before the next
 * turn: what the chat template still owes after the token that ended the turn, the results, and the opening of the
 * assistant's next turn. A call that cannot be run has an error as its result, from which the model can learn.
 *
 * What a model did wrong is an error that it reads, and is scored like everything else. What our machinery did wrong ends
 * the trajectory with STOP_TOOL_FAILED: its reward is NaN and never 0.
 *
 *     Episodes x;
 *     EpisodeOptions o = episode_defaults();
 *     o.tools = "calculator";
 *     if (!episodes_open(&x, &o, &model_text, &e)) die("%s", e.text);
 *     engine.turns = &x.turns;                                            // a Rollout
 *     if (!rollout_run(&engine, &sampling, requests, n, NULL, NULL, &e)) die("%s", e.text);
 *     episodes_close(&x);
 */
#ifndef LLMC_ROLLOUT_EPISODES_H
#define LLMC_ROLLOUT_EPISODES_H

#define XXH_INLINE_ALL

#include "../base/clock.h"        /* clock_seconds */
#include "../base/error.h"        /* Error, error_set, xcalloc, xstrdup, ... */
#include "../base/json_text.h"    /* json_utf8 */
#include "../base/options.h"      /* OPTION_INT, OPTION_TEXT, OPTION_CHOICE, OPTION_GROUP, ... */
#include "../base/text.h"         /* token_list_free, TextBuffer, TokenList, text_free, ... */
#include "../model/model_text.h"  /* ModelText, model_text_decode_bytes */
#include "../text/tokenizer.h"    /* tokenizer_decode, TOKENIZER_CONTINUES, tokenizer_encode */
#include "../tools/tool_format.h" /* ToolCalls, TOOL_FORMATS, TOOL_TAGS, tool_format_answer, ... */
#include "../tools/tools.h"       /* TOOLS_BUILT_IN, Tool, Tools, tool_check, ... */
#include "rollout.h"              /* Completion, RolloutAnswer, RolloutSample, RolloutTurns */
#include "trajectory.h"           /* Trajectory, STOP_COMPLETED, STOP_NONE, STOP_MAX_TOOL_CALLS, ... */
#include <xxhash.h>

typedef enum { TRUNCATE_LEFT, TRUNCATE_MIDDLE, TRUNCATE_RIGHT } TruncateSide;

#define EPISODE_GAP "...(truncated)..."

typedef struct EpisodeOptions {
    const char *tools, *format;
    int64_t max_turns, max_turn_tokens, max_calls, max_parallel, max_response, max_parse_errors;
    double timeout;
    int side; /* a TruncateSide */
} EpisodeOptions;

static inline EpisodeOptions episode_defaults(void) {
    return (EpisodeOptions){
        .max_turns = 8, .max_parallel = 8, .max_response = 256, .max_parse_errors = 2, .side = TRUNCATE_MIDDLE};
}

// clang-format off
#define EPISODE_OPTIONS(o)                                                                                             \
    OPTION_GROUP("Tools"),                                                                                             \
    OPTION_TEXT  ("tools",                       0, &(o).tools,            "NAME,...",                                 \
                  "tools that the model may call: " TOOLS_BUILT_IN),                                                   \
    OPTION_TEXT  ("tool-format",                 0, &(o).format,           "NAME",                                     \
                  "how calls are written: " TOOL_FORMATS " (default: that of the chat template)"),                     \
    OPTION_INT   ("max-turns",                   0, &(o).max_turns,        1, 4096, "maximum turns of the model in a completion"), \
    OPTION_INT   ("max-turn-tokens",             0, &(o).max_turn_tokens,  0, 1 << 20,                                 \
                  "maximum tokens of a turn; 0: only the limit of the whole completion"),                              \
    OPTION_INT   ("max-tool-calls",              0, &(o).max_calls,        0, 65536,                                   \
                  "maximum calls in a completion; 0: no limit"),                                                       \
    OPTION_INT   ("max-parallel-calls",          0, &(o).max_parallel,     1, 256, "maximum calls of a turn; the others get an error"), \
    OPTION_INT   ("max-tool-response-length",    0, &(o).max_response,     1, 1 << 20,                                 \
                  "maximum tokens of a result; longer ones are cut"),                                                  \
    OPTION_CHOICE("tool-response-truncate-side", 0, &(o).side,             "left|middle|right", "where a long result is cut"), \
    OPTION_INT   ("max-parse-errors",            0, &(o).max_parse_errors, 1, 4096,                                    \
                  "end a completion after this many turns in a row whose call cannot be read"),                        \
    OPTION_REAL  ("rollout-timeout",             0, &(o).timeout,          0, 1e9,                                     \
                  "end completions after this many seconds; 0: never")
// clang-format on

/* A call of a turn and its result. */
typedef struct EpisodeCall {
    char *name, *content; /* content: NULL until the result has come */
    bool failed;
} EpisodeCall;

/* A sample while it is drawn. */
typedef struct Episode {
    int64_t request;
    int32_t sample;
    Trajectory *y;
    EpisodeCall *call; /* of the last turn */
    int count;
    bool invalid;         /* the call of the last turn could not be read */
    bool over;            /* the trajectory ends instead of a next turn */
    int32_t read;         /* turns whose text is among the messages */
    int parse_errors;     /* in a row */
    struct Episode *next; /* in the queue of answered turns */
} Episode;

typedef struct Episodes {
    EpisodeOptions o;
    const ModelText *text;
    Tools tools;
    ToolFormat format;
    RolloutTurns turns;    /* for Rollout.turns */
    Episode *first, *last; /* turns that have been answered */
    TokenList ids;
} Episodes;

static inline bool episodes_on(const EpisodeOptions *o) { return o->tools != NULL; }

/* Rejects options that have no effect. */
static inline void episodes_refuse_unused(const EpisodeOptions *o, const Option *table) {
    static const char tools[] = "used only with --tools";
    const bool on = episodes_on(o);
    const OptionUse use[] = {
        {&o->format, on, tools},    {&o->max_turns, on, tools},        {&o->max_turn_tokens, on, tools},
        {&o->max_calls, on, tools}, {&o->max_parallel, on, tools},     {&o->max_response, on, tools},
        {&o->side, on, tools},      {&o->max_parse_errors, on, tools}, {&o->timeout, on, tools}};
    options_refuse_unused(table, use, sizeof use / sizeof *use);
}

/* ---- episodes -------------------------------------------------------------------------------------------------- */

static inline void episode_forget_calls(Episode *p) {
    for (int i = 0; i < p->count; i++) free(p->call[i].name), free(p->call[i].content);
    free(p->call);
    p->call = NULL;
    p->count = 0;
    p->invalid = false;
}

static inline void episode_free(Episode *p) {
    if (!p) return;
    episode_forget_calls(p);
    free(p);
}

static inline Episode *episode_of(const RolloutSample *who, const Completion *c) {
    Trajectory *y = c->trajectory;
    if (!y->episode) {
        Episode *p = (Episode *)xcalloc(1, sizeof *p);
        *p = (Episode){.request = who->request, .sample = who->sample, .y = y};
        y->episode = p;
        y->messages = json_array();
    }
    return (Episode *)y->episode;
}

/* Adds a turn to the queue of those whose results are all there. */
static inline void episodes_answered(Episodes *x, Episode *p) {
    p->next = NULL;
    if (x->last) x->last->next = p;
    else x->first = p;
    x->last = p;
}

/* The text of tokens [first, c->count), without the token that ended the turn. */
static inline char *episodes_said(const Episodes *x, const Completion *c, int32_t first, size_t *n) {
    return model_text_decode_bytes(x->text, c->tokens + first, c->count - first, false, n);
}

/* Adds the model's turn to the trajectory's messages. */
static inline void episodes_message(Episode *p, const char *said, size_t n, const ToolCalls *calls, bool within) {
    json_t *message = json_object(), *list = json_array();
    const size_t shown = calls->count && !within ? calls->before : n;
    json_object_set_new(message, "role", json_string("assistant"));
    json_object_set_new(message, "content", json_utf8(said, shown));
    for (int i = 0; i < calls->count; i++) {
        if (!calls->call[i].arguments || !*calls->call[i].name) continue;
        json_array_append_new(list, json_pack("{s:s,s:{s:s,s:O}}", "type", "function", "function", "name",
                                              calls->call[i].name, "arguments", calls->call[i].arguments));
    }
    if (json_array_size(list)) json_object_set(message, "tool_calls", list);
    json_decref(list);
    json_array_append_new(p->y->messages, message);
    p->read = p->y->turns;
}

/* Makes the result of a call of text[0..n), which may be too long: cuts it to --max-tool-response-length tokens. */
static inline char *episodes_cut(Episodes *x, Episode *p, const char *text, size_t n) {
    TextBuffer clean = {0}, out = {0};
    TokenList ids = {0};
    const int32_t most = (int32_t)x->o.max_response;
    utf8_clean(&clean, text, n);
    text_append(&clean, "", 0);
    for (size_t i = 0; i < clean.length; i++)
        if (!clean.text[i]) clean.text[i] = ' ';
    if (!tokenizer_encode(&x->text->tokenizer, clean.text, clean.length, TOKENIZER_CONTINUES, &ids, NULL) ||
        ids.count <= most) {
        token_list_free(&ids);
        return clean.text;
    }
    const int32_t left = x->o.side == TRUNCATE_LEFT    ? 0
                         : x->o.side == TRUNCATE_RIGHT ? most
                                                       : most / 2,
                  right = most - left;
    TextBuffer raw = {0};
    tokenizer_decode(&x->text->tokenizer, ids.ids, left, true, &raw);
    text_string(&raw, EPISODE_GAP);
    tokenizer_decode(&x->text->tokenizer, ids.ids + ids.count - right, right, true, &raw);
    utf8_clean(&out, raw.text, raw.length);
    p->y->counts.truncated_results++;
    token_list_free(&ids);
    text_free(&clean), text_free(&raw);
    return out.text;
}

/* Sets the result of a call. */
static inline void episodes_result(Episodes *x, Episode *p, int k, const char *content, size_t n, bool failed) {
    EpisodeCall *call = &p->call[k];
    call->content = episodes_cut(x, p, content, n);
    call->failed = failed;
    p->y->counts.failed_calls += failed;
}

/* Sets the result of a call to an error. */
static inline void episodes_error(Episodes *x, Episode *p, int k, const char *why) {
    char *text = tool_error(why);
    episodes_result(x, p, k, text, strlen(text), true);
    free(text);
}

/* Runs call k of a turn, or sets its result to the reason why it cannot be run. */
static inline void episodes_run(Episodes *x, Episode *p, int k, const ToolCall *call) {
    TextBuffer result = {0};
    Tool *tool = tools_find(&x->tools, call->name);
    char many[60];
    p->y->counts.calls++;
    snprintf(many, sizeof many, "at most %lld calls a turn", (long long)x->o.max_parallel);
    if (call->error) episodes_error(x, p, k, call->error);
    else if (!tool) {
        tools_unknown(&x->tools, call->name, &result);
        episodes_error(x, p, k, result.text);
    } else if (k >= x->o.max_parallel) episodes_error(x, p, k, many);
    else if (!tool_check(tool, call->arguments, &result)) episodes_error(x, p, k, result.text);
    else {
        tool->calls++;
        if (tool_run(tool, call->arguments, &result)) episodes_result(x, p, k, result.text, result.length, false);
        else episodes_error(x, p, k, result.text);
    }
    text_free(&result);
}

/* Whether a trajectory ends instead of a next turn; sets its stop. */
static inline bool episodes_limit(const Episodes *x, const Episode *p) {
    Trajectory *y = p->y;
    if (y->stop != STOP_NONE) return true;
    if (p->parse_errors >= x->o.max_parse_errors) y->stop = STOP_PARSE_ERROR;
    else if (y->turns >= x->o.max_turns) y->stop = STOP_MAX_TURNS;
    else if (x->o.timeout > 0 && clock_seconds() - y->started > x->o.timeout) y->stop = STOP_ROLLOUT_TIMEOUT;
    return y->stop != STOP_NONE;
}

/* ---- the environment of the engine ----------------------------------------------------------------------------- */

/* Reads a turn and runs its calls; RolloutTurns.turn. */
static inline bool episodes_turn(void *context, const RolloutSample *who, const Completion *c) {
    Episodes *x = (Episodes *)context;
    Episode *p = episode_of(who, c);
    Trajectory *y = c->trajectory;
    ToolCalls calls;
    size_t n;
    char *said = episodes_said(x, c, y->first, &n);
    tool_format_read(&x->format, said, n, &calls);
    episodes_message(p, said, n, &calls, x->format.kind == TOOL_TAGS);
    free(said);
    y->counts.arguments_as_string += calls.arguments_as_string;
    y->counts.text_after_call += calls.text_after;
    y->counts.overrun_bytes += (int32_t)calls.overrun;
    y->counts.parse_errors += calls.malformed;
    p->parse_errors = calls.malformed ? p->parse_errors + 1 : 0;
    const int64_t left = x->o.max_calls ? x->o.max_calls - y->counts.calls : INT32_MAX;
    const int run = calls.count < left ? calls.count : (int)left;
    episode_forget_calls(p);
    p->invalid = calls.malformed && calls.count == 1;
    p->count = run;
    p->call = (EpisodeCall *)xcalloc((size_t)run + 1, sizeof *p->call);
    for (int k = 0; k < run; k++) {
        p->call[k].name = xstrdup(calls.call[k].name);
        episodes_run(x, p, k, &calls.call[k]);
    }
    if (!calls.count) y->stop = STOP_COMPLETED;
    else if (run < calls.count) y->stop = STOP_MAX_TOOL_CALLS;
    tool_calls_free(&calls);
    if (y->stop == STOP_COMPLETED) return false;
    episodes_answered(x, p);
    return true;
}

/* Encodes the results of a turn, or ends its trajectory. */
static inline bool episodes_answer(Episodes *x, Episode *p, RolloutAnswer *a, Error *e) {
    const char **name = (const char **)xcalloc((size_t)p->count + 1, sizeof *name),
               **result = (const char **)xcalloc((size_t)p->count + 1, sizeof *result);
    for (int i = 0; i < p->count; i++) {
        name[i] = p->call[i].name;
        result[i] = p->call[i].content;
        json_t *message = json_pack("{s:s,s:s}", "role", "tool", "content", result[i]);
        if (*name[i]) json_object_set_new(message, "name", json_string(name[i]));
        json_array_append_new(p->y->messages, message);
    }
    x->ids.count = 0;
    uint64_t hash = 0;
    for (int i = 0; i < p->count; i++) hash = XXH3_64bits_withSeed(result[i], strlen(result[i]), hash + 1);
    const bool over = episodes_limit(x, p);
    bool ok = over || tool_format_answer(&x->format, &x->text->chat, &x->text->tokenizer, name, result, p->count,
                                         p->invalid, &x->ids, e);
    free(name), free(result);
    *a = (RolloutAnswer){p->request, p->sample, x->ids.ids, x->ids.count, hash, over};
    return ok;
}

/* The next answered turn; RolloutTurns.ready. */
static inline int episodes_ready(void *context, bool wait, RolloutAnswer *answer, Error *e) {
    Episodes *x = (Episodes *)context;
    (void)wait;
    Episode *p = x->first;
    if (!p) return 0;
    x->first = p->next;
    if (!x->first) x->last = NULL;
    return episodes_answer(x, p, answer, e) ? 1 : -1;
}

/* A sample has ended; RolloutTurns.end. */
static inline void episodes_end(void *context, const RolloutSample *who, const Completion *c) {
    Episodes *x = (Episodes *)context;
    Episode *p = episode_of(who, c);
    Trajectory *y = c->trajectory;
    if (p->read < y->turns) { /* a turn that was cut by a limit, and was not read */
        size_t n;
        const ToolCalls none = {0};
        char *said = episodes_said(x, c, y->first, &n);
        episodes_message(p, said, n, &none, true);
        free(said);
    }
    episode_free(p);
    y->episode = NULL;
}

static inline bool episodes_finish(void *context, Error *e) {
    (void)context, (void)e;
    return true;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static inline void episodes_close(Episodes *x) {
    tools_free(&x->tools);
    tool_format_free(&x->format);
    token_list_free(&x->ids);
    *x = (Episodes){0};
}

/* Adds the tools of --tools. */
static inline bool episodes_tools(Episodes *x, Error *e) {
    const char *at = x->o.tools;
    while (at && *at) {
        const size_t n = strcspn(at, ",");
        char *name = xstrndup(at, n);
        const bool ok = tools_add(&x->tools, name, e);
        free(name);
        if (!ok) return false;
        at += n + (at[n] == ',');
    }
    return x->tools.count || error_set(e, "no tool is named");
}

/* Opens the format and compares it with the tools and the chat template. */
static inline bool episodes_format(Episodes *x, Error *e) {
    const ModelText *t = x->text;
    const char *spec = x->o.format ? x->o.format : tool_format_of(&t->chat);
    if (!spec)
        return error_set(
            e, "this model's chat template has no format of calls of its own; give --tool-format: " TOOL_FORMATS);
    if (!tool_format_open(&x->format, spec, e)) return false;
    if (x->format.kind == TOOL_TAGS) {
        if (x->tools.count != 1)
            return error_set(e, "tool format %.60s: it has one tool, but %d are given", spec, x->tools.count);
        return tool_format_tool(&x->format, x->tools.tool[0].name, x->tools.tool[0].schema, e);
    }
    const char *name = "probe", *result = "RESULT";
    TokenList ids = {0};
    const bool ok = tool_format_answer(&x->format, &t->chat, &t->tokenizer, &name, &result, 1, false, &ids, e);
    token_list_free(&ids);
    return ok;
}

/* Opens the tools and their format. text: the model's; it must outlive *x, which must not move afterwards. */
static inline bool episodes_open(Episodes *x, const EpisodeOptions *o, const ModelText *text, Error *e) {
    *x = (Episodes){.o = *o, .text = text};
    if (!text->present) return error_set(e, "the model has no tokenizer, and calls of tools are text");
    if (!episodes_tools(x, e) || !episodes_format(x, e)) {
        episodes_close(x);
        return false;
    }
    x->turns = (RolloutTurns){.context = x,
                              .turn_tokens = (int32_t)o->max_turn_tokens,
                              .ends = {.tokenizer = &text->tokenizer},
                              .turn = episodes_turn,
                              .ready = episodes_ready,
                              .end = episodes_end,
                              .finish = episodes_finish};
    for (int i = 0; i < 2; i++)
        if (x->format.end[i]) x->turns.ends.text[x->turns.ends.count++] = x->format.end[i];
    return true;
}

#endif
