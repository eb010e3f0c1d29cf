/* episodes.h - the environment of completions of several turns: runs the calls of a model's turns and writes their
 * results.
 *
 * When the model ends a turn, its text is read (../tools/tool_format.h). A turn without a call completes the trajectory.
 * The calls of a turn are run, and their results, in the order of the calls, become the observed tokens before the next
 * turn: what the chat template still owes after the token that ended the turn, the results, and the opening of the
 * assistant's next turn. A call that cannot be run has an error as its result, from which the model can learn.
 *
 * A program whose hello has "opening" is asked for its episode before the model's first turn: its answer can show the model
 * something, which follows the content of the prompt's last message, and can narrow the tools. Prompts of such rows end before
 * what the chat template writes after that content: these tokens (RolloutRequest.held) are observed after the text.
 *
 * What a model did wrong is an error that it reads, and is scored like everything else. What our machinery did wrong ends
 * the trajectory with STOP_TOOL_FAILED: its reward is NaN and never 0.
 *
 *     Episodes x;
 *     EpisodeOptions o = episode_defaults();
 *     o.tools = "calculator";
 *     const CodeToolOptions code = {.sandbox = sandbox_defaults(), .timeout = 6};
 *     if (!episodes_open(&x, &o, &code, &model_text, engine.slots, "train_grpo", 42, &e)) die("%s", e.text);
 *     engine.turns = &x.turns;                                            // a Rollout
 *     if (!rollout_run(&engine, &sampling, requests, n, NULL, NULL, &e)) die("%s", e.text);
 *     episodes_close(&x);
 */
#ifndef LLMC_ROLLOUT_EPISODES_H
#define LLMC_ROLLOUT_EPISODES_H

#define XXH_INLINE_ALL

#include "../base/clock.h"         /* clock_seconds */
#include "../base/error.h"         /* error_set, Error, xcalloc, xstrdup, ... */
#include "../base/json_text.h"     /* json_utf8 */
#include "../base/options.h"       /* OPTION_INT, OPTION_REAL, OPTION_TEXT, OPTION_CHOICE, ... */
#include "../base/random.h"        /* RANDOM_ENVIRONMENT, random_bits */
#include "../base/text.h"          /* TextBuffer, text_free, TokenList, token_list_free, ... */
#include "../model/model_text.h"   /* ModelText, model_text_decode_bytes */
#include "../text/chat.h"          /* ChatTemplate, chat_encode_answer, chat_encode_opening */
#include "../text/tokenizer.h"     /* TOKENIZER_CONTINUES, tokenizer_decode, tokenizer_encode */
#include "../tools/code_tool.h"    /* CodeTool, CodeToolOptions, code_tool_begin, code_tool_close, ... */
#include "../tools/tool_format.h"  /* TOOL_PYTHON_TOKENS, ToolCalls, TOOL_FORMATS, TOOL_TAGS, ... */
#include "../tools/tool_program.h" /* ToolReply, ToolProgram, ToolPrograms, TOOL_PROGRAMS_MAX, ... */
#include "../tools/tools.h"        /* TOOL_PROGRAM, Tool, TOOLS_BUILT_IN, TOOL_BROKEN, ... */
#include "episode_rows.h"          /* EPISODE_TOOLS_MAX, EpisodeRow, episode_row_read, episode_row_has, ... */
#include "prompts.h"               /* PromptText, Prompts, prompts_length, prompts_tokens */
#include "rollout.h"               /* Completion, RolloutSample, RolloutAnswer, RolloutTurns, ... */
#include "trajectory.h"            /* Trajectory, STOP_TOOL_FAILED, STOP_NONE, trajectory_stop_name, ... */
#include <xxhash.h>

typedef enum { AGGREGATE_LAST, AGGREGATE_SUM } EpisodeAggregator; /* of the rewards of turns */

typedef enum { TRUNCATE_LEFT, TRUNCATE_MIDDLE, TRUNCATE_RIGHT } TruncateSide;

#define EPISODE_GAP "...(truncated)..."

typedef struct EpisodeOptions {
    const char *tools, *format, *invalid_text;
    OptionList commands;
    int64_t workers, retries, line_max;
    double tool_timeout, start_timeout, max_failures;
    int aggregator; /* an EpisodeAggregator */
    const char *mask_stopped;
    bool mask_void, mask_errors;
    int unmasked; /* 1: observed tokens are in the loss */
    double parse_penalty;
    int64_t max_turns, max_turn_tokens, max_calls, max_parallel, max_response, max_parse_errors;
    double timeout;
    int side;          /* a TruncateSide */
    bool format_alone; /* the format is used without tools, too: by a server, whose requests bring tools */
} EpisodeOptions;

static inline EpisodeOptions episode_defaults(void) {
    return (EpisodeOptions){.max_turns = 8,
                            .max_parallel = 8,
                            .max_response = 256,
                            .max_parse_errors = 2,
                            .retries = 2,
                            .line_max = 1 << 20,
                            .tool_timeout = 30,
                            .start_timeout = 30,
                            .max_failures = 0.1,
                            .side = TRUNCATE_MIDDLE};
}

// clang-format off
#define EPISODE_OPTIONS(o)                                                                                             \
    OPTION_GROUP("Tools"),                                                                                             \
    OPTION_TEXT  ("tools",                       0, &(o).tools,            "NAME,...",                                 \
                  "tools that the model may call: " TOOLS_BUILT_IN),                                                   \
    OPTION_LIST  ("tool-cmd",                    0, &(o).commands,         "PROGRAM",                                  \
                  "program that gives tools or episodes, by JSON lines; may be repeated"),                             \
    OPTION_INT   ("tool-workers",                0, &(o).workers,          0, 256,                                     \
                  "copies of each --tool-cmd; 0: one for each processor, at most --slots"),                            \
    OPTION_REAL  ("tool-timeout",                0, &(o).tool_timeout,     0.01, 1e6, "seconds for an answer of --tool-cmd"), \
    OPTION_REAL  ("tool-start-timeout",          0, &(o).start_timeout,    0.01, 1e6, "seconds for the hello of --tool-cmd"), \
    OPTION_INT   ("tool-retries",                0, &(o).retries,          0, 100,                                     \
                  "how often a call without an episode is repeated after its program failed"),                         \
    OPTION_INT   ("tool-line-max",               0, &(o).line_max,         64, 1 << 30, "maximum bytes of a line of --tool-cmd"), \
    OPTION_REAL  ("max-tool-failures",           0, &(o).max_failures,     0, 1,                                       \
                  "end the run if tools failed in more than this fraction of the completions"),                     \
    OPTION_CHOICE("reward-aggregator",           0, &(o).aggregator,       "last|sum",                                 \
                  "how the rewards of a completion's turns, given by --tool-cmd, become one"),                         \
    OPTION_TEXT  ("tool-format",                 0, &(o).format,           "NAME",                                     \
                  "how calls are written: " TOOL_FORMATS " (default: that of the chat template)"),                     \
    OPTION_TEXT  ("invalid-action-text",         0, &(o).invalid_text,     "TEXT",                                     \
                  "what the model reads after a call that cannot be read, in formats with calls within its turn "     \
                  "(default: an error as a result; search-r1: the paper's sentence)"),                                 \
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
    int tool; /* index; -1: none */
} EpisodeCall;

/* How long the calls of a tool took. */
typedef struct EpisodeTimes {
    double *seconds; /* (count) */
    int count, room;
} EpisodeTimes;

/* What a request to a program is for; the number of a call is added to EPISODE_CALL, and that of the program is subtracted from
 * EPISODE_RESET. */
enum { EPISODE_RESET, EPISODE_END, EPISODE_STEP, EPISODE_CALL };

/* The samples of one prompt, if a program may let one wait for another, as the players of a game do. */
typedef struct EpisodeGroup {
    int64_t request;
    int32_t samples, over;       /* all; those whose episodes are over and freed */
    struct Episode *first;       /* the episodes that have begun and are not freed */
    int life[TOOL_PROGRAMS_MAX]; /* of the worker, when the first of them began; 0: none has */
    double sent;                 /* clock_seconds() of the last request */
    struct EpisodeGroup *next;
} EpisodeGroup;

/* A sample while it is drawn. */
typedef struct Episode {
    int64_t request;
    int32_t sample, samples; /* of its prompt: which, and how many there are */
    Trajectory *y;
    EpisodeCall *call; /* of the last turn */
    int count;
    int waiting;  /* answers that have not come yet */
    bool opening; /* its first turn waits for the answers to resets */
    bool shown;   /* they are among its tokens */
    bool ended;   /* the sample is over: only the answer to its end is waited for */
    char *role;   /* of the observation of a step; NULL: results of calls */
    struct EpisodeLink {
        int life;   /* of the worker, when the episode began; 0: it has not begun */
        char *view; /* what its answer to the reset shows before the first turn; NULL: nothing */
    } link[TOOL_PROGRAMS_MAX];
    const int32_t *held; /* the prompt's tokens that are held back (RolloutRequest.held) */
    uint64_t id;         /* of the sample */
    const PromptText *record;
    EpisodeRow row; /* what the record has */
    double end_reward;
    uint64_t state;       /* hash of the state that the answer to the last turn names; 0: none */
    bool invalid;         /* the call of the last turn could not be read */
    bool over;            /* the trajectory ends instead of a next turn */
    int32_t read;         /* turns whose text is among the messages */
    int parse_errors;     /* in a row */
    struct Episode *next; /* in the queue of answered turns */
    EpisodeGroup *group;  /* NULL: no program lets episodes wait for one another */
    struct Episode *peer; /* the next one of the group */
} Episode;

typedef struct Episodes {
    EpisodeOptions o;
    const ModelText *text_of_model;
    Tools tools;
    EpisodeTimes *times; /* (tools) since the metrics were last written */
    ToolFormat format;
    RolloutTurns turns;      /* for Rollout.turns */
    Episode *first, *last;   /* turns that have been answered */
    bool masked[STOP_COUNT]; /* by --mask-stopped */
    ToolPrograms programs;
    CodeTool code;       /* the tools python and c; open if there is one */
    const char *program; /* the trainer's name */
    uint64_t seed;
    int text;                /* a program that answers whole turns; -1: none */
    int64_t samples, failed; /* of this run of the engine: all, and those that a program failed */
    int ending;              /* answers to ends that have not come yet */
    EpisodeGroup *groups;    /* those with episodes */
    TokenList opening;       /* of programs with `opening`: tokens between a user's content and the first turn */
    TokenList ids;
} Episodes;

/* Options of trainers: which trajectories are in the loss, and what they lose. */
// clang-format off
#define EPISODE_LOSS_OPTIONS(o)                                                                                        \
    OPTION_TEXT("mask-stopped",        0, &(o).mask_stopped, "REASON,...",                                             \
                "leave completions that ended for these reasons (stop/REASON) out of the loss"),                       \
    OPTION_FLAG("mask-void-turns",     0, &(o).mask_void,                                                              \
                "leave completions out of the loss if a turn has neither a readable call nor an answer"),              \
    OPTION_FLAG("mask-error-turns",    0, &(o).mask_errors,                                                            \
                "leave turns whose call cannot be read out of the loss"),                                              \
    OPTION_CHOICE("state-masking",     0, &(o).unmasked, "true|false",                                                 \
                "keep the tokens that the model observed out of the loss"),                                            \
    OPTION_REAL("parse-error-penalty", 0, &(o).parse_penalty, 0, 1e6,                                                  \
                "subtracted from the reward for each turn whose call cannot be read")
// clang-format on

static inline bool episodes_on(const EpisodeOptions *o) { return o->tools || o->commands.count; }

/* Whether the model may call programs that it writes. */
static inline bool episodes_code(const EpisodeOptions *o) {
    for (const char *at = o->tools; at && *at; at += strcspn(at, ","), at += *at == ',') {
        const size_t n = strcspn(at, ",");
        if ((n == 6 && !memcmp(at, "python", n)) || (n == 1 && *at == 'c')) return true;
    }
    return false;
}

/* The option that an error of episodes_open() is about. */
static inline const char *episodes_option(const EpisodeOptions *o) {
    return o->commands.count ? "--tool-cmd" : "--tools";
}

/* Rejects options that have no effect. */
static inline void episodes_refuse_unused(const EpisodeOptions *o, const Option *table) {
    static const char tools[] = "used only with --tools or --tool-cmd", command[] = "used only with --tool-cmd";
    const bool on = episodes_on(o), programs = o->commands.count > 0;
    const OptionUse use[] = {{&o->mask_stopped, on, tools},
                             {&o->mask_void, on, tools},
                             {&o->mask_errors, on, tools},
                             {&o->unmasked, on, tools},
                             {&o->parse_penalty, on, tools},
                             {&o->format, on || o->format_alone, tools},
                             {&o->invalid_text, on, tools},
                             {&o->max_turns, on, tools},
                             {&o->max_turn_tokens, on, tools},
                             {&o->max_calls, on, tools},
                             {&o->max_parallel, on, tools},
                             {&o->max_response, on, tools},
                             {&o->side, on, tools},
                             {&o->max_parse_errors, on, tools},
                             {&o->timeout, on, tools},
                             {&o->workers, programs, command},
                             {&o->tool_timeout, programs, command},
                             {&o->start_timeout, programs, command},
                             {&o->retries, programs, command},
                             {&o->line_max, programs, command},
                             {&o->max_failures, on, tools},
                             {&o->aggregator, programs, command}};
    options_refuse_unused(table, use, sizeof use / sizeof *use);
}

/* ---- episodes -------------------------------------------------------------------------------------------------- */

static inline void episode_forget_calls(Episode *p) {
    for (int i = 0; i < p->count; i++) free(p->call[i].name), free(p->call[i].content);
    free(p->call), free(p->role);
    p->call = NULL;
    p->role = NULL;
    p->count = 0;
    p->state = 0;
    p->invalid = false;
}

/* Adds an episode to its group, of q->samples, which begins with the first one. */
static inline void episodes_join(Episodes *x, Episode *p, const RolloutRequest *q) {
    EpisodeGroup *g = x->groups;
    while (g && g->request != p->request) g = g->next;
    if (!g) {
        g = (EpisodeGroup *)xcalloc(1, sizeof *g);
        *g = (EpisodeGroup){.request = p->request, .samples = q->samples, .next = x->groups};
        x->groups = g;
    }
    p->group = g;
    p->peer = g->first;
    g->first = p;
}

/* Removes an episode that is over from its group. The last one frees the group. */
static inline void episodes_leave(Episodes *x, Episode *p) {
    EpisodeGroup *g = p->group, **at = &x->groups;
    Episode **peer = &g->first;
    while (*peer != p) peer = &(*peer)->peer;
    *peer = p->peer;
    if (++g->over < g->samples) return;
    while (*at != g) at = &(*at)->next;
    *at = g->next;
    free(g);
}

/* The time from which a program owes its answers to the requests of an episode's group: that of the last request, or INFINITY
 * as long as a sample of the group is drawn, because the program may wait for it; ToolPrograms.owes. */
static inline double episodes_owes(const void *context) {
    const EpisodeGroup *g = ((const Episode *)context)->group;
    int32_t resting = g->over;
    for (const Episode *p = g->first; p; p = p->peer) resting += p->ended || p->waiting;
    return resting < g->samples ? INFINITY : g->sent;
}

static inline void episode_free(Episodes *x, Episode *p) {
    if (p->group) episodes_leave(x, p);
    for (int i = 0; i < x->programs.count; i++) free(p->link[i].view);
    episode_forget_calls(p);
    free(p);
}

static inline Episode *episode_of(Episodes *x, const RolloutSample *who, const Completion *c) {
    Trajectory *y = c->trajectory;
    if (!y->episode) {
        Error unused; /* episodes_check() has found it */
        Episode *p = (Episode *)xcalloc(1, sizeof *p);
        *p = (Episode){.request = who->request,
                       .sample = who->sample,
                       .samples = who->q->samples,
                       .y = y,
                       .id = who->q->id + (uint64_t)who->sample,
                       .held = who->q->prompt + who->q->prompt_len,
                       .record = (const PromptText *)who->q->record};
        if (!episode_row_read(&x->tools, &x->programs, p->record, &p->row, &unused)) p->row.tools = 0;
        if (x->turns.together) episodes_join(x, p, who->q);
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
    return model_text_decode_bytes(x->text_of_model, c->tokens + first, c->count - first, false, n);
}

/* Adds a part to the content of the assistant's only message: its turns, their calls and their results are one
 * message in python-tokens, as in nanochat's conversations. */
static inline void episodes_part(Episode *p, const char *type, const char *text, size_t n) {
    json_t *messages = p->y->messages, *last = json_array_get(messages, json_array_size(messages) - 1);
    if (!json_is_array(json_object_get(last, "content"))) { /* none, or what was observed before the first turn */
        last = json_pack("{s:s,s:[]}", "role", "assistant", "content");
        json_array_append_new(messages, last);
    }
    if (n || strcmp(type, "text"))
        json_array_append_new(json_object_get(last, "content"),
                              json_pack("{s:s,s:o}", "type", type, "text", json_utf8(text, n)));
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
    if (!tokenizer_encode(&x->text_of_model->tokenizer, clean.text, clean.length, TOKENIZER_CONTINUES, &ids, NULL) ||
        ids.count <= most) {
        token_list_free(&ids);
        return clean.text;
    }
    const int32_t left = x->o.side == TRUNCATE_LEFT    ? 0
                         : x->o.side == TRUNCATE_RIGHT ? most
                                                       : most / 2,
                  right = most - left;
    TextBuffer raw = {0};
    tokenizer_decode(&x->text_of_model->tokenizer, ids.ids, left, true, &raw);
    text_string(&raw, EPISODE_GAP);
    tokenizer_decode(&x->text_of_model->tokenizer, ids.ids + ids.count - right, right, true, &raw);
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

/* ---- programs -------------------------------------------------------------------------------------------------- */

/* Nothing that was asked for an episode is waited for any more. */
static inline void episodes_forget(Episodes *x, Episode *p) {
    tool_programs_forget(&x->programs, p);
    code_tool_forget(&x->code, p);
}

/* A tool failed: the trajectory ends, and nothing of it is waited for. */
static inline void episodes_fail(Episodes *x, Episode *p) {
    p->y->stop = STOP_TOOL_FAILED;
    p->waiting = 0;
    episodes_forget(x, p);
}

/* The worker of a program that an episode stays with: that of its group if episodes can wait for one another. */
static inline int episodes_worker(const Episodes *x, const Episode *p, int program) {
    const uint64_t number = x->programs.program[program].group ? (uint64_t)p->request : p->id;
    return (int)(number % (uint64_t)x->programs.o.workers);
}

enum { EPISODE_ID = 48 };

/* The id of an episode in requests. */
static inline void episode_id(const Episode *p, char id[EPISODE_ID]) {
    snprintf(id, EPISODE_ID, "%lld.%d", (long long)p->request, p->sample);
}

/* Begins an episode with a program, unless the worker has lost its group. */
static inline void episodes_reset(Episodes *x, Episode *p, int program) {
    const ToolProgram *g = &x->programs.program[program];
    const PromptText *r = p->record;
    char id[EPISODE_ID];
    episode_id(p, id);
    const int worker = episodes_worker(x, p, program), life = g->worker[worker].life;
    const uint64_t seed = random_bits(x->seed, RANDOM_ENVIRONMENT + p->id, 0) >> 11;
    p->link[program].life = life;
    if (g->group && !p->group->life[program]) p->group->life[program] = life;
    if (g->group) p->link[program].life = p->group->life[program];
    if (p->link[program].life != life) return;
    json_t *fields = r && r->fields && *r->fields ? json_loads(r->fields, JSON_ALLOW_NUL, NULL) : NULL;
    json_t *reset =
        json_pack("{s:s,s:s,s:i,s:s,s:s,s:s,s:I}", "op", "reset", "id", id, "samples", p->samples, "prompt",
                  r ? r->text : "", "answer", r ? r->answer : "", "task", r ? r->task : "", "seed", (json_int_t)seed);
    json_object_set_new(reset, "fields", fields ? fields : json_object());
    tool_programs_send(&x->programs, program, worker, reset, p, EPISODE_RESET - program);
    p->waiting++;
}

/* Sends a request about an episode to its worker of a program. Begins the episode with the first one. */
static inline void episodes_send(Episodes *x, Episode *p, int program, json_t *request, int tag) {
    const ToolProgram *g = &x->programs.program[program];
    const int worker = episodes_worker(x, p, program), life = g->worker[worker].life;
    char id[EPISODE_ID];
    episode_id(p, id);
    json_object_set_new(request, "id", json_string(id));
    if (g->episodes && !p->link[program].life) episodes_reset(x, p, program);
    if (p->group) p->group->sent = clock_seconds();
    if (g->episodes && p->link[program].life != life) { /* the worker has lost the episode */
        json_decref(request);
        episodes_fail(x, p);
        return;
    }
    tool_programs_send(&x->programs, program, worker, request, p, tag);
    p->waiting++;
}

/* Notes how long a call of a tool took. */
static inline void episodes_time(Episodes *x, int tool, double seconds) {
    EpisodeTimes *t = &x->times[tool];
    if (t->count == t->room) {
        t->room = t->room ? 2 * t->room : 64;
        t->seconds = (double *)xrealloc(t->seconds, (size_t)t->room, sizeof *t->seconds);
    }
    t->seconds[t->count++] = seconds;
}

/* Starts the program of call k of a turn. */
static inline void episodes_program(Episodes *x, Episode *p, int k, const Tool *tool, const json_t *arguments) {
    const json_t *code = json_object_get(arguments, "code");
    const char *source = json_string_value(code);
    if (strlen(source) != json_string_length(code)) {
        episodes_error(x, p, k, "the program contains the character U+0000");
        return;
    }
    code_tool_begin(&x->code, tool->name, source, p, EPISODE_CALL + k);
    p->waiting++;
}

/* Runs call k of a turn, or sets its result to the reason why it cannot be run. */
static inline void episodes_run(Episodes *x, Episode *p, int k, const ToolCall *call) {
    TextBuffer result = {0};
    Tool *tool = tools_find(&x->tools, call->name);
    const int number = tool ? (int)(tool - x->tools.tool) : -1;
    char many[60];
    p->y->counts.calls++;
    p->call[k].tool = number;
    snprintf(many, sizeof many, "at most %lld calls a turn", (long long)x->o.max_parallel);
    if (call->error) episodes_error(x, p, k, call->error);
    else if (!tool || !episode_row_has(&p->row, number)) {
        episode_row_unknown(&x->tools, &p->row, call->name, &result);
        episodes_error(x, p, k, result.text);
    } else if (k >= x->o.max_parallel) episodes_error(x, p, k, many);
    else if (!tool_check(tool, call->arguments, &result)) episodes_error(x, p, k, result.text);
    else {
        tool->calls++;
        if (tool->kind == TOOL_PROGRAM)
            episodes_send(x, p, tool->program,
                          json_pack("{s:s,s:i,s:i,s:s,s:O}", "op", "call", "turn", p->y->turns - 1, "call", k, "name",
                                    tool->name, "arguments", call->arguments),
                          EPISODE_CALL + k);
        else if (tool->kind == TOOL_CODE) episodes_program(x, p, k, tool, call->arguments);
        else {
            const double start = clock_seconds();
            const ToolEnd outcome = tool_run(tool, call->arguments, &result, &x->programs.why);
            episodes_time(x, number, clock_seconds() - start);
            switch (outcome) {
            case TOOL_DONE: episodes_result(x, p, k, result.text, result.length, false); break;
            case TOOL_WRONG: episodes_error(x, p, k, result.text); break;
            case TOOL_BROKEN: episodes_fail(x, p); break;
            }
        }
    }
    text_free(&result);
}

/* Reads the reward of an answer: a number, or null or nothing (NaN). Returns false if it is something else. */
static inline bool episode_reward(const json_t *value, double *reward) {
    const json_t *given = json_object_get(value, "reward");
    *reward = json_is_number(given) ? json_number_value(given) : NAN;
    return !given || json_is_null(given) || (json_is_number(given) && isfinite(*reward));
}

/* a + b, of which either may be NaN: none. */
static inline double episode_sum(double a, double b) { return isnan(a) ? b : isnan(b) ? a : a + b; }

/* The reward of the turns, as --reward-aggregator says. */
static inline float episode_turns_reward(const Episodes *x, const Trajectory *y) {
    double reward = NAN;
    for (int32_t k = 0; k < y->turns; k++)
        if (!isnan(y->turn_reward[k]))
            reward = x->o.aggregator == AGGREGATE_SUM ? episode_sum(reward, y->turn_reward[k]) : y->turn_reward[k];
    return (float)reward;
}

/* Notes the state of the environment that an answer names, any JSON value: turns that follow equal states are compared by
 * --advantage-level gigpo. The states of several calls of a turn are one together. */
static inline void episodes_state(Episode *p, const json_t *value) {
    const json_t *state = json_object_get(value, "state");
    if (!state || json_is_null(state)) return;
    char *text = json_dumps(state, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
    p->state ^=
        XXH3_64bits_withSeed(text, strlen(text), (uint64_t)json_integer_value(json_object_get(value, "call")) + 1);
    free(text);
}

/* Reads a name that an answer may give a trajectory into `name`, which it cannot change afterwards. Returns false, with the
 * reason in *why, if it cannot. */
static inline bool episode_name(const json_t *value, const char *key, char name[TRAJECTORY_NAME], Error *why) {
    const json_t *given = json_object_get(value, key);
    const char *text = json_string_value(given);
    const size_t n = json_string_length(given);
    if (!given || json_is_null(given)) return true;
    if (!text) return error_set(why, "--tool-cmd: the \"%s\" of an answer is no text", key);
    if (!n || n >= TRAJECTORY_NAME)
        return error_set(why, "--tool-cmd: the \"%s\" of an answer has %zu bytes, expected 1 to %d", key, n,
                         TRAJECTORY_NAME - 1);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] < ' ')
            return error_set(why, "--tool-cmd: the \"%s\" of an answer has a control character", key);
    if (*name && strcmp(name, text))
        return error_set(why, "--tool-cmd: the \"%s\" of a completion changes from '%s' to '%s'", key, name, text);
    memcpy(name, text, n + 1);
    return true;
}

/* Takes the names that the answer to a reset or an end may give a trajectory. Returns false if they are none. */
static inline bool episodes_take_names(Episodes *x, Episode *p, const json_t *value) {
    return episode_name(value, "role", p->y->role, &x->programs.why) &&
           episode_name(value, "episode", p->y->episode_id, &x->programs.why);
}

/* Whether a field of the answer to a reset says something: it is neither left out nor null nor an empty text. */
static inline bool episode_says(const json_t *value) {
    return value && !json_is_null(value) && !(json_is_string(value) && !json_string_length(value));
}

/* Takes the answer to a reset. Returns false if it is not one. */
static inline bool episodes_take_reset(Episodes *x, Episode *p, const ToolReply *r) {
    const json_t *view = json_object_get(r->value, "observation"), *tools = json_object_get(r->value, "tools");
    Error why, *e = &x->programs.why;
    if (!episodes_take_names(x, p, r->value)) return false;
    if (episode_says(view) && !json_is_string(view))
        return error_set(e, "--tool-cmd: the \"observation\" of an answer is no text");
    if (episode_says(view)) {
        TextBuffer text = {0};
        text_append(&text, json_string_value(view), json_string_length(view));
        p->link[EPISODE_RESET - r->tag].view = episodes_cut(x, p, text.text, text.length);
        text_free(&text);
    }
    if (!episode_says(tools)) return true;
    if (p->row.text >= 0)
        return error_set(e, "--tool-cmd: the answer to a reset has \"tools\", but a program answers the whole turns");
    return episode_row_tools(&x->tools, tools, &p->row, &why) ||
           error_set(e, "--tool-cmd: the \"tools\" of the answer to a reset: %s", why.text);
}

/* Takes the answer to a call or a step. Returns false if it is not one. */
static inline bool episodes_take_turn(Episodes *x, Episode *p, const ToolReply *r) {
    const bool step = r->tag == EPISODE_STEP;
    const json_t *content = json_object_get(r->value, step ? "observation" : "content");
    const char *text = json_string_value(content), *role = json_string_value(json_object_get(r->value, "role"));
    float *total = &p->y->turn_reward[p->y->turns - 1];
    double reward;
    const bool done = json_is_true(json_object_get(r->value, "done"));
    if (!episode_reward(r->value, &reward) || (!text && !(step || done))) return false;
    *total = (float)episode_sum(*total, reward);
    episodes_state(p, r->value);
    if (!step) episodes_time(x, p->call[r->tag - EPISODE_CALL].tool, r->seconds);
    if (step) p->role = xstrdup(role ? role : "user");
    if (done) p->y->stop = STOP_TOOL_STOPPED;
    else if (!text) p->y->stop = STOP_COMPLETED;
    episodes_result(x, p, step ? 0 : r->tag - EPISODE_CALL, text ? text : "", text ? json_string_length(content) : 0,
                    json_is_true(json_object_get(r->value, "error")));
    return true;
}

/* An answer has come, or a tool has failed. An episode that has ended is over with the last answer, which may be an earlier
 * one than that to its end, because programs answer in any order. */
static inline void episodes_took(Episodes *x, Episode *p) {
    const bool failed = p->y->stop == STOP_TOOL_FAILED;
    if (p->waiting > 0 && !failed) return;
    if (!p->ended) {
        episodes_answered(x, p);
        return;
    }
    x->failed += failed;
    episodes_forget(x, p);
    x->ending--;
    episode_free(x, p);
}

/* Takes the answer to an end. */
static inline void episodes_take_end(Episodes *x, Episode *p, const ToolReply *r) {
    double reward = NAN;
    if (!r->value || !episode_reward(r->value, &reward) || !episodes_take_names(x, p, r->value))
        p->y->stop = STOP_TOOL_FAILED;
    p->y->reward = (float)episode_sum(p->y->reward, reward);
    p->y->end_reward = (float)episode_sum(p->y->end_reward, reward);
    p->waiting--;
    episodes_took(x, p);
}

/* Takes an answer of a program. */
static inline bool episodes_take(Episodes *x, const ToolReply *r, Error *e) {
    Episode *p = (Episode *)r->context;
    bool good = r->value != NULL;
    if (p->ended && (r->tag == EPISODE_END || !good)) {
        episodes_take_end(x, p, r);
        json_decref(r->value);
        return true;
    }
    const bool reset = r->tag <= EPISODE_RESET;
    const bool shows = episode_says(json_object_get(r->value, "observation")),
               narrows = episode_says(json_object_get(r->value, "tools"));
    if (reset && !p->opening && (shows || narrows)) {
        json_decref(r->value);
        return error_set(
            e,
            "tool program '%.200s': its answer to a reset has %s, for which the model's first turn does not wait; "
            "its hello must have \"opening\": true",
            x->programs.program[EPISODE_RESET - r->tag].command, shows ? "an observation" : "tools");
    }
    good = good && (reset ? episodes_take_reset(x, p, r) : episodes_take_turn(x, p, r));
    json_decref(r->value);
    if (good) p->waiting--;
    else episodes_fail(x, p);
    episodes_took(x, p);
    return true;
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

/* Begins the episode of a sample whose first turn waits for it; RolloutTurns.open. */
static inline bool episodes_opens(void *context, const RolloutSample *who, const Completion *c) {
    Episodes *x = (Episodes *)context;
    Episode *p = episode_of(x, who, c);
    p->opening = who->q->held > 0;
    for (int i = 0; p->opening && i < x->programs.count; i++) {
        if (!x->programs.program[i].opening || !(p->row.programs >> i & 1)) continue;
        episodes_reset(x, p, i);
    }
    if (p->group) p->group->sent = clock_seconds();
    if (p->opening && !p->waiting) { /* the worker has lost the group */
        episodes_fail(x, p);
        episodes_answered(x, p);
    }
    return p->opening;
}

/* Writes the tokens before the first turn: what the resets show, after the prompt's last content, and what the chat template
 * writes next. */
static inline bool episodes_first(Episodes *x, Episode *p, uint64_t *state, Error *e) {
    const ModelText *t = x->text_of_model;
    TextBuffer text = {0};
    for (int i = 0; i < x->programs.count; i++)
        if (p->link[i].view) text_string(&text, p->link[i].view);
    if (!x->opening.count) token_list_append(&x->ids, *p->held);
    const bool ok =
        !text.length || tokenizer_encode(&t->tokenizer, text.text, text.length, TOKENIZER_CONTINUES, &x->ids, e);
    token_list_extend(&x->ids, x->opening.ids, x->opening.count);
    *state = text.length ? XXH3_64bits(text.text, text.length) : 0;
    if (text.length)
        json_array_append_new(p->y->messages, json_pack("{s:s,s:s}", "role", "user", "content", text.text));
    text_free(&text);
    return ok;
}

/* Sends a whole turn to the program that answers turns. */
static inline void episodes_step(Episodes *x, Episode *p, const char *said, size_t n) {
    episode_forget_calls(p);
    p->count = 1;
    p->call = (EpisodeCall *)xcalloc(1, sizeof *p->call);
    p->call[0].name = xstrdup("");
    episodes_send(x, p, p->row.text,
                  json_pack("{s:s,s:i,s:o}", "op", "step", "turn", p->y->turns - 1, "text", json_utf8(said, n)),
                  EPISODE_STEP);
}

/* Reads the call of a turn in python-tokens, and adds the turn to the trajectory's messages. */
static inline void episodes_read_tokens(Episodes *x, Episode *p, const Completion *c, ToolCalls *calls) {
    const int32_t first = p->y->first, n = c->count - first;
    const int32_t before =
        tool_format_read_tokens(&x->format, &x->text_of_model->tokenizer, c->tokens + first, n, calls);
    size_t bytes;
    char *said = model_text_decode_bytes(x->text_of_model, c->tokens + first, before, false, &bytes);
    episodes_part(p, "text", said, bytes);
    if (before < n) {
        const json_t *code = json_object_get(calls->call[0].arguments, x->format.argument);
        episodes_part(p, "python", json_string_value(code), json_string_length(code));
    }
    p->read = p->y->turns;
    free(said);
}

/* Runs the calls of a turn. Returns false if it has none. */
static inline bool episodes_calls(Episodes *x, Episode *p, const Completion *c, const char *said, size_t n) {
    Trajectory *y = p->y;
    ToolCalls calls;
    if (x->format.kind == TOOL_PYTHON_TOKENS) episodes_read_tokens(x, p, c, &calls);
    else {
        tool_format_read(&x->format, said, n, &calls);
        episodes_message(p, said, n, &calls, x->format.kind == TOOL_TAGS);
    }
    y->counts.arguments_as_string += calls.arguments_as_string;
    y->counts.text_after_call += calls.text_after;
    y->counts.overrun_bytes += (int32_t)calls.overrun;
    y->counts.parse_errors += calls.malformed;
    y->malformed[y->turns - 1] = calls.malformed;
    p->parse_errors = calls.malformed ? p->parse_errors + 1 : 0;
    const int64_t left = x->o.max_calls ? x->o.max_calls - y->counts.calls : INT32_MAX;
    const int run = calls.count < left ? calls.count : (int)left;
    const bool any = calls.count > 0;
    episode_forget_calls(p);
    p->invalid = calls.malformed && calls.count == 1;
    p->count = run;
    p->call = (EpisodeCall *)xcalloc((size_t)run + 1, sizeof *p->call);
    for (int k = 0; k < run; k++) p->call[k].name = xstrdup(calls.call[k].name);
    for (int k = 0; k < run && y->stop == STOP_NONE; k++) episodes_run(x, p, k, &calls.call[k]);
    if (y->stop == STOP_NONE && run < calls.count) y->stop = STOP_MAX_TOOL_CALLS;
    tool_calls_free(&calls);
    return any;
}

/* Reads a turn and runs its calls, or has it answered; RolloutTurns.turn. */
static inline bool episodes_turn(void *context, const RolloutSample *who, const Completion *c) {
    Episodes *x = (Episodes *)context;
    Episode *p = episode_of(x, who, c);
    const ToolCalls none = {0};
    size_t n;
    bool parked = true;
    char *said = episodes_said(x, c, p->y->first, &n);
    p->y->unread = 0;
    if (p->row.text >= 0) {
        episodes_message(p, said, n, &none, true);
        episodes_step(x, p, said, n);
    } else parked = episodes_calls(x, p, c, said, n);
    free(said);
    if (!parked) p->y->stop = STOP_COMPLETED;
    if (parked && !p->waiting) episodes_answered(x, p);
    return parked;
}

/* The number of results that the model observes: in python-tokens a call that failed has none. */
static inline int episodes_results(const Episodes *x, const Episode *p) {
    const bool unseen = x->format.kind == TOOL_PYTHON_TOKENS && !p->role && p->count && p->call[0].failed;
    return unseen ? 0 : p->count;
}

/* Adds the results of a turn to the trajectory's messages. They are unread until the model's next turn, which there may not be:
 * then they have no tokens. */
static inline void episodes_observed(const Episodes *x, Episode *p) {
    if (x->format.kind == TOOL_PYTHON_TOKENS) {
        for (int i = 0; i < episodes_results(x, p); i++) {
            if (!p->call[i].content) continue;
            episodes_part(p, "python_output", p->call[i].content, strlen(p->call[i].content));
            p->y->unread++;
        }
        return;
    }
    for (int i = 0; i < p->count; i++) {
        if (!p->call[i].content || (p->role && !*p->call[i].content)) continue;
        const char *content = p->invalid && x->format.invalid ? x->format.invalid : p->call[i].content;
        json_t *message = json_pack("{s:s,s:s}", "role", p->role ? p->role : "tool", "content", content);
        if (*p->call[i].name) json_object_set_new(message, "name", json_string(p->call[i].name));
        json_array_append_new(p->y->messages, message);
        p->y->unread++;
    }
}

/* Encodes the results of a turn, or ends its trajectory. */
static inline bool episodes_answer(Episodes *x, Episode *p, RolloutAnswer *a, Error *e) {
    const ModelText *t = x->text_of_model;
    const int n = episodes_results(x, p);
    const bool first = p->opening;
    const char **name = (const char **)xcalloc((size_t)n + 1, sizeof *name),
               **result = (const char **)xcalloc((size_t)n + 1, sizeof *result);
    uint64_t hash = n ? 0 : XXH3_64bits("", 0); /* 0 is the state of the prompt */
    episodes_observed(x, p);
    x->ids.count = 0;
    p->opening = false;
    const bool over = first ? p->y->stop != STOP_NONE : episodes_limit(x, p);
    bool ok = true;
    for (int i = 0; i < n && !over; i++) {
        name[i] = p->call[i].name;
        result[i] = p->call[i].content;
        hash = XXH3_64bits_withSeed(result[i], strlen(result[i]), hash + 1);
    }
    p->shown = first && !over;
    if (p->shown) ok = episodes_first(x, p, &hash, e);
    else if (!over && p->role) {
        json_t *messages = json_pack("[{s:s,s:s}]", "role", p->role, "content", result[0]);
        ok = chat_encode_answer(&t->chat, &t->tokenizer, messages, &x->ids, e);
        json_decref(messages);
    } else if (!over)
        ok = tool_format_answer(&x->format, &t->chat, &t->tokenizer, name, result, n, p->invalid, &x->ids, e);
    free(name), free(result);
    *a = (RolloutAnswer){.request = p->request,
                         .sample = p->sample,
                         .ids = x->ids.ids,
                         .count = x->ids.count,
                         .state = p->state ? p->state : hash,
                         .over = over};
    return ok;
}

/* Sets *reply to an answer of a program and returns 1, or 0 if there is none, or -1, as tool_programs_next(). */
static inline int episodes_next(Episodes *x, bool wait, ToolReply *reply, Error *e) {
    for (;;) {
        if (code_tool_next(&x->code, reply, &x->programs.why)) return 1;
        const int got = tool_programs_next(&x->programs, wait && !x->code.count, reply, e);
        if (got || !wait || !x->code.count) return got;
        code_tool_wait(&x->code, x->programs.pending_count ? 0.002 : 0.02);
    }
}

/* The next answered turn; RolloutTurns.ready. */
static inline int episodes_ready(void *context, bool wait, RolloutAnswer *answer, Error *e) {
    Episodes *x = (Episodes *)context;
    ToolReply reply;
    while (!x->first) {
        const int got = episodes_next(x, wait, &reply, e);
        if (got <= 0) return got;
        if (!episodes_take(x, &reply, e)) return -1;
    }
    Episode *p = x->first;
    x->first = p->next;
    if (!x->first) x->last = NULL;
    return episodes_answer(x, p, answer, e) ? 1 : -1;
}

/* Sends the end of an episode to the programs that have episodes. Returns whether an answer is waited for. */
static inline bool episodes_send_end(Episodes *x, Episode *p) {
    const bool lost = p->y->stop == STOP_TOOL_FAILED;
    for (int i = 0; i < x->programs.count; i++) {
        const ToolProgram *g = &x->programs.program[i];
        const int worker = episodes_worker(x, p, i);
        if (!g->episodes || !(p->row.programs >> i & 1) || (lost && p->link[i].life != g->worker[worker].life))
            continue;
        episodes_send(x, p, i,
                      json_pack("{s:s,s:s,s:i,s:O,s:i}", "op", "end", "reason", trajectory_stop_name(p->y->stop),
                                "turns", p->y->turns, "messages", p->y->messages, "unread", p->y->unread),
                      EPISODE_END);
    }
    if (p->y->stop == STOP_TOOL_FAILED) episodes_forget(x, p);
    return p->y->stop != STOP_TOOL_FAILED && p->waiting;
}

/* The calls of an episode that is ended by a person are not waited for. */
static inline void episodes_interrupt(Episodes *x, Episode *p) {
    Episode **at = &x->first, *last = NULL;
    while (*at && *at != p) {
        last = *at;
        at = &last->next;
    }
    if (*at) *at = p->next;
    if (x->last == p) x->last = last;
    p->waiting = 0;
    episodes_forget(x, p);
}

/* A sample has ended; RolloutTurns.end. */
static inline void episodes_end(void *context, const RolloutSample *who, const Completion *c) {
    Episodes *x = (Episodes *)context;
    Episode *p = episode_of(x, who, c);
    Trajectory *y = c->trajectory;
    if (!c->count && p->shown)
        error_set(&x->programs.why,
                  "what follows the prompt after a reset has %d tokens, which a completion has no room for",
                  x->ids.count);
    if (p->read < y->turns && c->count) { /* a turn that was cut by a limit, and was not read */
        size_t n;
        const ToolCalls none = {0};
        char *said = episodes_said(x, c, y->first, &n);
        y->unread = 0;
        if (x->format.kind == TOOL_PYTHON_TOKENS) episodes_part(p, "text", said, n);
        else episodes_message(p, said, n, &none, true);
        free(said);
    }
    y->reward = episode_turns_reward(x, y);
    y->episode = NULL;
    if (y->stop == STOP_INTERRUPTED) episodes_interrupt(x, p);
    p->ended = true;
    x->samples++;
    if (episodes_send_end(x, p)) {
        x->ending++;
        return;
    }
    x->failed += y->stop == STOP_TOOL_FAILED;
    episode_free(x, p);
}

/* Adds the names that the environment gave a completion to a row of JSON. */
static inline void episode_row_named(json_t *row, const Trajectory *y) {
    const char *const names[][2] = {{"role", y->role}, {"episode", y->episode_id}};
    for (int i = 0; i < 2; i++)
        if (*names[i][1]) json_object_set_new(row, names[i][0], json_string(names[i][1]));
}

/* Joins what a reset showed, message `at` if it is a user's, to the content of the user's message before it. */
static inline void episode_join_first(json_t *messages, size_t at) {
    json_t *before = at ? json_array_get(messages, at - 1) : NULL, *shown = json_array_get(messages, at);
    const char *role[2] = {json_string_value(json_object_get(before, "role")),
                           json_string_value(json_object_get(shown, "role"))};
    const json_t *content[2] = {json_object_get(before, "content"), json_object_get(shown, "content")};
    for (int i = 0; i < 2; i++)
        if (!role[i] || strcmp(role[i], "user") || !json_is_string(content[i])) return;
    TextBuffer both = {0};
    for (int i = 0; i < 2; i++) text_append(&both, json_string_value(content[i]), json_string_length(content[i]));
    json_object_set_new(before, "content", json_stringn(both.text, both.length));
    json_array_remove(messages, at);
    text_free(&both);
}

/* Adds the fields of a completion of several turns to a row of JSON: the messages of the prompt (those of the row, or its
 * prompt as the user's) with those of the turns, the number of results at their end that the model has not observed, the
 * lengths of the runs of drawn and observed tokens, beginning with the drawn ones, why it ended, what the environment gave it,
 * and its role. */
static inline void episode_row(json_t *row, const Completion *c) {
    const Trajectory *y = c->trajectory;
    if (!y) return;
    json_t *given = json_object_get(row, "messages"),
           *messages = json_is_array(given) ? json_deep_copy(given) : json_array(), *rewards = json_array();
    if (!json_is_array(given))
        json_array_append_new(messages,
                              json_pack("{s:s,s:O}", "role", "user", "content", json_object_get(row, "prompt")));
    json_array_extend(messages, y->messages);
    episode_join_first(messages, json_array_size(messages) - json_array_size(y->messages));
    for (int32_t k = 0; k < y->turns; k++)
        json_array_append_new(rewards, isnan(y->turn_reward[k]) ? json_null() : json_real(y->turn_reward[k]));
    json_object_set_new(row, "messages", messages);
    json_object_set_new(row, "unread", json_integer(y->unread));
    json_object_set_new(row, "drawn", trajectory_runs(y, c->count));
    json_object_set_new(row, "stop", json_string(trajectory_stop_name(y->stop)));
    json_object_set_new(row, "turn_rewards", rewards);
    if (!isnan(y->end_reward)) json_object_set_new(row, "end_reward", json_real(y->end_reward));
    episode_row_named(row, y);
}

/* Waits for the answers to ends; RolloutTurns.finish. */
static inline bool episodes_finish(void *context, Error *e) {
    Episodes *x = (Episodes *)context;
    ToolReply reply;
    while (x->ending) {
        const int got = tool_programs_next(&x->programs, true, &reply, e);
        if (got < 0 || (got && !episodes_take(x, &reply, e))) return false;
    }
    const int64_t failed = x->failed, samples = x->samples;
    x->failed = x->samples = 0;
    return failed <= x->o.max_failures * (double)samples ||
           error_set(e, "%lld of %lld completions were lost because a tool failed (--max-tool-failures %g): %.500s",
                     (long long)failed, (long long)samples, x->o.max_failures, x->programs.why.text);
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static inline void episodes_close(Episodes *x) {
    tool_programs_close(&x->programs);
    for (int i = 0; x->times && i < x->tools.count; i++) free(x->times[i].seconds);
    free(x->times);
    while (x->groups) {
        EpisodeGroup *next = x->groups->next;
        free(x->groups);
        x->groups = next;
    }
    code_tool_close(&x->code);
    tools_free(&x->tools);
    tool_format_free(&x->format);
    token_list_free(&x->ids), token_list_free(&x->opening);
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
    return !x->o.tools || x->tools.count || error_set(e, "no tool is named");
}

/* Starts the programs of --tool-cmd and adds their tools. slots: of the engine. */
static inline bool episodes_programs(Episodes *x, int slots, Error *e) {
    const int cores = (int)sysconf(_SC_NPROCESSORS_ONLN), workers = x->o.workers ? (int)x->o.workers : cores;
    const ToolProgramOptions o = {.workers = workers < slots ? workers : slots,
                                  .timeout = x->o.tool_timeout,
                                  .start_timeout = x->o.start_timeout,
                                  .retries = (int)x->o.retries,
                                  .line_max = x->o.line_max};
    if (!x->o.commands.count) return true;
    if (!tool_programs_open(&x->programs, x->o.commands.items, x->o.commands.count, &o, x->program, (int64_t)x->seed,
                            e))
        return false;
    for (int i = 0; i < x->programs.count; i++) {
        const ToolProgram *g = &x->programs.program[i];
        json_t *schemas = json_object_get(g->hello, "tools");
        if (g->text) x->text = i;
        static const char *const of_episodes[] = {"group", "opening"};
        for (int k = 0; k < 2; k++)
            if (!g->episodes && json_is_true(json_object_get(g->hello, of_episodes[k])))
                return error_set(e, "tool program '%.200s': its hello has \"%s\" without \"episodes\"", g->command,
                                 of_episodes[k]);
        for (size_t k = 0; k < json_array_size(schemas); k++) {
            if (!tools_add_schema(&x->tools, TOOL_PROGRAM, json_incref(json_array_get(schemas, k)), e)) return false;
            x->tools.tool[x->tools.count - 1].program = i;
        }
        if (!g->text && !json_array_size(schemas))
            return error_set(
                e, "tool program '%.200s': its hello names no tools, and it answers no turns (\"text\": true)",
                g->command);
    }
    return episode_rows_check_names(&x->tools, &x->programs, e);
}

/* Whether a program waits with its answer to a reset before the first turn of a completion. */
static inline bool episodes_opening(const ToolPrograms *p, uint32_t programs) {
    bool any = false;
    for (int i = 0; i < p->count; i++) any = any || (p->program[i].opening && programs >> i & 1);
    return any;
}

/* Whether a row of a file has what it asks for. tokens: (n) of its prompt. *held: the number of its last tokens that its
 * completions begin with (RolloutRequest.held). name, number: of the file and the row, for messages. */
static inline bool episodes_check(const Episodes *x, const PromptText *what, const int32_t *tokens, int32_t n,
                                  const char *name, int64_t number, int32_t *held, Error *e) {
    EpisodeRow row;
    Error why;
    *held = 0;
    if (!episode_row_read(&x->tools, &x->programs, what, &row, &why))
        return error_set(e, "%.200s: prompt %lld: %s", name, (long long)number, why.text);
    if (!episodes_opening(&x->programs, row.programs)) return true;
    const TokenList *opening = &x->opening;
    *held = opening->count ? opening->count : 1;
    if (n <= *held || memcmp(tokens + n - opening->count, opening->ids, (size_t)opening->count * sizeof *tokens))
        return error_set(
            e,
            "%.200s: prompt %lld: it does not end as the model's chat template ends a user's message, so that what "
            "the answer to a reset shows has no place",
            name, (long long)number);
    return true;
}

/* Checks all prompts of a shard, and sets their held tokens. */
static inline bool episodes_check_prompts(const Episodes *x, Prompts *p, Error *e) {
    int32_t *held = (int32_t *)xcalloc((size_t)p->count + 1, sizeof *held);
    bool ok = true;
    for (int64_t i = 0; ok && i < p->count; i++)
        ok = episodes_check(x, &p->what[i], prompts_tokens(p, i), prompts_length(p, i), p->shard.name, i + 1, &held[i],
                            e);
    if (ok && episodes_opening(&x->programs, UINT32_MAX)) p->held = held;
    else free(held);
    return ok;
}

/* Reads the reasons of --mask-stopped. */
static inline bool episodes_masked(Episodes *x, Error *e) {
    for (const char *at = x->o.mask_stopped; at && *at;) {
        const size_t n = strcspn(at, ",");
        int k = STOP_COMPLETED;
        while (k < STOP_COUNT && (strlen(trajectory_stop_name((TrajectoryStop)k)) != n ||
                                  memcmp(trajectory_stop_name((TrajectoryStop)k), at, n)))
            k++;
        if (k == STOP_COUNT)
            return error_set(e, "--mask-stopped: '%.*s' is no reason for which a completion ends, such as max_tokens",
                             (int)n, at);
        x->masked[k] = true;
        at += n + (at[n] == ',');
    }
    return true;
}

/* Whether a trajectory is in the loss. */
static inline bool episodes_count_in_loss(const Episodes *x, const Trajectory *y) {
    return !x->masked[y->stop] && !(x->o.mask_void && trajectory_void(y));
}

/* Opens the format and compares it with the tools and the chat template. */
static inline bool episodes_format(Episodes *x, Error *e) {
    const ModelText *t = x->text_of_model;
    const char *spec = x->o.format ? x->o.format : tool_format_of(&t->chat);
    if (x->text >= 0 && !x->tools.count)
        return (!x->o.format && !x->o.invalid_text) ||
               error_set(
                   e,
                   "--tool-format and --invalid-action-text: used only for calls, but the program of --tool-cmd answers "
                   "whole turns");
    if (!spec)
        return error_set(
            e, "this model's chat template has no format of calls of its own; give --tool-format: " TOOL_FORMATS);
    if (!tool_format_open(&x->format, spec, e) || !tool_format_tokens(&x->format, &t->tokenizer, e)) return false;
    if (x->o.invalid_text && x->format.kind != TOOL_TAGS)
        return error_set(
            e, "--invalid-action-text: tool format %.60s has a result or nothing after a call that cannot be read",
            spec);
    if (x->o.invalid_text) {
        free(x->format.invalid);
        x->format.invalid = xstrdup(x->o.invalid_text);
    }
    if (tool_format_within(&x->format)) {
        if (x->text >= 0)
            return error_set(
                e, "tool format %.60s: it ends turns of its own, also those that a program of --tool-cmd answers",
                spec);
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

/* The schemas of the tools, which a prompt shows by the model's own template: a new list, or NULL if the template shows none
 * or if calls are not written as it says. */
static inline json_t *episodes_shown(const Episodes *x) {
    const ChatTemplate *c = &x->text_of_model->chat;
    if (!c->model || !strstr(c->spec, "tools") || tool_format_within(&x->format) || !x->tools.count) return NULL;
    json_t *list = json_array();
    for (int i = 0; i < x->tools.count; i++) json_array_append(list, x->tools.tool[i].schema);
    return list;
}

/* Whether a program lets the samples of a prompt wait for one another. */
static inline bool episodes_together(const ToolPrograms *p) {
    bool any = false;
    for (int i = 0; i < p->count; i++) any = any || p->program[i].group;
    return any;
}

/* Opens the tools, their programs and their format. text: the model's; it must outlive *x, which must not move afterwards.
 * code: how the programs of python and c run. slots: of the engine. program, seed: the trainer's name and its seed. */
static inline bool episodes_open(Episodes *x, const EpisodeOptions *o, const CodeToolOptions *code,
                                 const ModelText *text, int slots, const char *program, int64_t seed, Error *e) {
    *x = (Episodes){.o = *o, .text_of_model = text, .text = -1, .program = program, .seed = (uint64_t)seed};
    if (!text->present) return error_set(e, "the model has no tokenizer, and calls of tools are text");
    bool ok = episodes_masked(x, e) && episodes_tools(x, e) && episodes_programs(x, slots, e);
    if (ok && x->tools.count > EPISODE_TOOLS_MAX) ok = error_set(e, "more than %d tools", EPISODE_TOOLS_MAX);
    if (!ok || !episodes_format(x, e) || (episodes_code(o) && !code_tool_open(&x->code, code, e))) {
        episodes_close(x);
        return false;
    }
    const bool opening = episodes_opening(&x->programs, UINT32_MAX);
    if (opening && !chat_encode_opening(&text->chat, &text->tokenizer, &x->opening, e)) {
        episodes_close(x);
        return false;
    }
    x->times = (EpisodeTimes *)xcalloc((size_t)x->tools.count + 1, sizeof *x->times);
    x->programs.owes = episodes_owes;
    x->turns = (RolloutTurns){.context = x,
                              .together = episodes_together(&x->programs),
                              .turn_tokens = (int32_t)o->max_turn_tokens,
                              .ends = {.tokenizer = &text->tokenizer},
                              .open = opening ? episodes_opens : NULL,
                              .turn = episodes_turn,
                              .ready = episodes_ready,
                              .end = episodes_end,
                              .finish = episodes_finish};
    if (x->format.kind == TOOL_PYTHON_TOKENS) {
        x->turns.end_tokens = &x->format.mark[PYTHON_END];
        x->turns.end_token_count = 1;
        x->turns.specials = true;
    }
    for (int i = 0; i < 2; i++)
        if (x->format.end[i]) x->turns.ends.text[x->turns.ends.count++] = x->format.end[i];
    return true;
}

#endif
