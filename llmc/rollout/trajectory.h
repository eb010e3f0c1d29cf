/* trajectory.h - completions of several turns: segments of tokens that the model drew, and of tokens that it observed.
 *
 * A trajectory is a prompt, then turns of the model, each followed by what a tool or an environment answered. All tokens
 * after the prompt are the tokens of one Completion, in order; `drawn` tells the two kinds apart. Only drawn tokens have
 * a log-probability, a place in a loss, in a normaliser and in a length; observed tokens are context.
 *
 *   tokens   12+34= | <calc> 1 2 + 3 4 </calc> | <r> 4 6 </r> | 4 6 end
 *   drawn             1      1 1 1 1 1 1         0   0 0 0      1 1 1
 *   turn              0      0 0 0 0 0 0         0   0 0 0      1 1 1
 *
 * Ids that were drawn are never decoded and encoded again. A completion without a Trajectory is a single turn, all of
 * whose tokens were drawn. rollout.h fills in the tokens, an environment (episodes.h) the rest.
 *
 * A program that calls the model by itself (../serve/agents.h) writes its own prompts, and need not continue what it has
 * asked before. Its trajectory has branches: sequences of their own, one after another, each of which begins with observed
 * tokens, at position 0, and does not follow the prompt of the row.
 *
 *     const int32_t tokens[] = {49, 50, 51, 52, 53};
 *     Trajectory *y = trajectory_new(5);
 *     memset(y->drawn, 1, 3);                     // three drawn tokens, then two observed ones
 *     memset(y->drawn + 3, 0, 2);
 *     trajectory_count(y, tokens, 5);
 *     printf("%d drawn, stopped by %s\n", y->drawn_count, trajectory_stop_name(y->stop));
 *     trajectory_free(y);
 */
#ifndef LLMC_ROLLOUT_TRAJECTORY_H
#define LLMC_ROLLOUT_TRAJECTORY_H

#include "../base/error.h" /* xrealloc, xcalloc, xmalloc */
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

/* Why a trajectory ended. */
typedef enum {
    STOP_NONE,                    /* it has not ended */
    STOP_COMPLETED,               /* the model's turn has no call */
    STOP_TOOL_STOPPED,            /* the environment said that it is done */
    STOP_MAX_TURNS,               /* --max-turns */
    STOP_MAX_TOOL_CALLS,          /* --max-tool-calls */
    STOP_PARSE_ERROR,             /* --max-parse-errors turns in a row with a call that could not be read */
    STOP_MAX_TOKENS,              /* --max-completion-length, or an answer that does not fit into the rest of it */
    STOP_MAX_TURN_TOKENS,         /* --max-turn-tokens */
    STOP_CONTEXT_OVERFLOW,        /* the model's context is full */
    STOP_ROLLOUT_TIMEOUT,         /* --rollout-timeout */
    STOP_TOOL_FAILED,             /* a tool's program failed: no fault of the model */
    STOP_AGENT_FAILED,            /* the program of --agent-cmd failed: no fault of the model */
    STOP_COUNT,                   /* the reasons that a run counts */
    STOP_INTERRUPTED = STOP_COUNT /* a person ended it, in a chat */
} TrajectoryStop;

/* Bytes of the name of a role or an episode, with the NUL after it. */
enum { TRAJECTORY_NAME = 64 };

/* What happened in a trajectory. */
typedef struct TrajectoryCounts {
    int32_t calls;               /* calls of tools */
    int32_t failed_calls;        /* of them: not run, or answered by an error */
    int32_t parse_errors;        /* turns with a call that could not be read */
    int32_t truncated_results;   /* results that were cut to --max-tool-response-length */
    int32_t arguments_as_string; /* calls whose arguments were a text with the object */
    int32_t text_after_call;     /* turns with text after their last call */
    int32_t overrun_bytes;       /* bytes after an end text in the token that completed it */
} TrajectoryCounts;

typedef struct Trajectory {
    uint8_t *drawn; /* (tokens of the completion) 1: drawn, 0: observed */
    TrajectoryStop stop;
    TrajectoryCounts counts;
    int32_t turns;      /* turns that the model has begun */
    float *turn_reward; /* (turns) given with the answer to a turn; NaN: none */
    uint64_t *state;    /* (turns) hash of what the turn was drawn after: equal for equal observations; 0: the prompt */
    int32_t *start;     /* (turns) index of its first token */
    int32_t *malformed; /* (turns) 1: a call of the turn could not be read */
    float *began;     /* (turns) seconds from the start of the trajectory until the turn could be drawn; NaN: unknown */
    float *ended;     /* (turns) and until it had ended: then its answer was waited for; NaN: unknown */
    int32_t branches; /* sequences that do not follow the prompt of the row; 0: all tokens follow it */
    int32_t *branch;  /* (branches) index of the first token of each */
    float reward;     /* of the environment for the whole trajectory; NaN: none */
    float end_reward; /* of it: given at the end, not with the answer to a turn; NaN: none */
    char role[TRAJECTORY_NAME];       /* given by the environment, such as a player's; "": none */
    char episode_id[TRAJECTORY_NAME]; /* shared with others of its prompt, such as a game's; "": none */
    json_t *messages;                 /* its turns and their answers as OpenAI's messages; NULL: not kept */
    int32_t unread;  /* results at the end of the messages that the model has not observed, because it ended before */
    int32_t thought; /* tokens before the end of its thinking (thinking.h); -1: none is marked */
    int32_t waits;   /* ends of its thinking that were removed */
    /* set by trajectory_count() */
    int32_t drawn_count;
    int32_t *drawn_ids; /* (drawn_count) */
    int32_t masked;     /* tokens that were drawn and that trajectory_mask_errors() made context, minus those that were
                         * observed and that trajectory_unmask() made drawn */
    /* while it is sampled */
    int32_t first;       /* index of the first token of the turn */
    int32_t cached;      /* tokens whose keys and values are in the cache */
    int32_t turn_tokens; /* maximum tokens of the turn; 0: that of all turns */
    int32_t removed;     /* drawn tokens that were removed again; draws go on counting */
    bool parked;         /* waits for an answer */
    double started;      /* clock_seconds() */
    void *episode;       /* the environment's */
    int32_t turns_room;
} Trajectory;

/* The name of a reason, as in the metric stop/NAME and in tinker; "" for STOP_NONE. */
static inline const char *trajectory_stop_name(TrajectoryStop stop) {
    static const char *const names[STOP_COUNT + 1] = {
        "",           "completed",       "tool_stopped",     "max_turns",       "max_tool_calls", "parse_error",
        "max_tokens", "max_turn_tokens", "context_overflow", "rollout_timeout", "tool_failed",    "agent_failed",
        "interrupted"};
    return names[stop];
}

/* Whether a limit of tokens or time cut the last turn off, or its answer. */
static inline bool trajectory_truncated(TrajectoryStop stop) {
    return stop == STOP_MAX_TOKENS || stop == STOP_MAX_TURN_TOKENS || stop == STOP_CONTEXT_OVERFLOW ||
           stop == STOP_ROLLOUT_TIMEOUT || stop == STOP_TOOL_FAILED || stop == STOP_AGENT_FAILED ||
           stop == STOP_INTERRUPTED;
}

static inline void trajectory_free(Trajectory *y) {
    if (!y) return;
    free(y->drawn), free(y->turn_reward), free(y->state), free(y->start), free(y->malformed), free(y->drawn_ids);
    free(y->branch), free(y->began), free(y->ended);
    json_decref(y->messages);
    free(y);
}

/* Begins the next turn, at token y->first. */
static inline void trajectory_turn(Trajectory *y) {
    if (y->turns == y->turns_room) {
        y->turns_room = y->turns_room ? 2 * y->turns_room : 8;
        y->turn_reward = (float *)xrealloc(y->turn_reward, (size_t)y->turns_room, sizeof *y->turn_reward);
        y->state = (uint64_t *)xrealloc(y->state, (size_t)y->turns_room, sizeof *y->state);
        y->start = (int32_t *)xrealloc(y->start, (size_t)y->turns_room, sizeof *y->start);
        y->malformed = (int32_t *)xrealloc(y->malformed, (size_t)y->turns_room, sizeof *y->malformed);
        y->began = (float *)xrealloc(y->began, (size_t)y->turns_room, sizeof *y->began);
        y->ended = (float *)xrealloc(y->ended, (size_t)y->turns_room, sizeof *y->ended);
    }
    y->turn_reward[y->turns] = NAN;
    y->start[y->turns] = y->first;
    y->malformed[y->turns] = 0;
    y->began[y->turns] = y->ended[y->turns] = NAN;
    y->state[y->turns++] = 0;
}

/* Starts the clock of a trajectory in its first turn. now: clock_seconds(). */
static inline void trajectory_start(Trajectory *y, double now) {
    y->started = now;
    y->began[0] = 0;
}

/* Begins a branch at this token. */
static inline void trajectory_branch(Trajectory *y, int32_t first) {
    y->branch = (int32_t *)xrealloc(y->branch, (size_t)y->branches + 1, sizeof *y->branch);
    y->branch[y->branches++] = first;
}

/* The end of branch k of n tokens: the start of the next one. */
static inline int32_t trajectory_branch_end(const Trajectory *y, int32_t k, int32_t n) {
    return k + 1 < y->branches ? y->branch[k + 1] : n;
}

/* An empty trajectory of at most `room` tokens, in its first turn. */
static inline Trajectory *trajectory_new(size_t room) {
    Trajectory *y = (Trajectory *)xcalloc(1, sizeof *y);
    y->drawn = (uint8_t *)xcalloc(room + 1, 1);
    y->reward = y->end_reward = NAN;
    y->thought = -1;
    trajectory_turn(y);
    return y;
}

/* Collects the drawn ones of n tokens. */
static inline void trajectory_count(Trajectory *y, const int32_t *tokens, int32_t n) {
    free(y->drawn_ids);
    y->drawn_ids = (int32_t *)xmalloc(((size_t)n + 1) * sizeof *y->drawn_ids);
    y->drawn_count = 0;
    for (int32_t i = 0; i < n; i++)
        if (y->drawn[i]) y->drawn_ids[y->drawn_count++] = tokens[i];
}

/* The lengths of the runs of drawn and observed tokens among n tokens, beginning with the drawn ones, as a JSON list. */
static inline json_t *trajectory_runs(const Trajectory *y, int32_t n) {
    json_t *runs = json_array();
    for (int32_t i = 0, from = 0; i <= n; i++) {
        if (i < n && y->drawn[i] == (json_array_size(runs) % 2 == 0)) continue;
        if (i > from || !json_array_size(runs)) json_array_append_new(runs, json_integer(i - from));
        from = i;
    }
    return runs;
}

/* The end of turn k of n tokens: the start of the next one. */
static inline int32_t trajectory_turn_end(const Trajectory *y, int32_t k, int32_t n) {
    return k + 1 < y->turns ? y->start[k + 1] : n;
}

/* Makes the tokens of turns whose call could not be read context, as if they had been observed: they leave every loss and
 * normaliser (tinker's mask_error_turns). tokens: (n) of the completion. Returns false, and changes nothing, if no token
 * would be left. */
static inline bool trajectory_mask_errors(Trajectory *y, const int32_t *tokens, int32_t n) {
    const int32_t before = y->drawn_count;
    int32_t left = 0;
    for (int32_t k = 0; k < y->turns; k++)
        for (int32_t i = y->start[k], end = trajectory_turn_end(y, k, n); i < end && !y->malformed[k]; i++)
            left += y->drawn[i];
    if (!left) return false;
    for (int32_t k = 0; k < y->turns; k++)
        if (y->malformed[k]) memset(y->drawn + y->start[k], 0, (size_t)(trajectory_turn_end(y, k, n) - y->start[k]));
    trajectory_count(y, tokens, n);
    y->masked += before - y->drawn_count;
    return true;
}

/* Makes the tokens observed after the first turn count as drawn: they are then in every loss and normaliser, as in Search-R1
 * with state_masking=false. tokens, logp: (n) of the completion; logp of these tokens, which the sampler does not know, becomes
 * NaN. */
static inline void trajectory_unmask(Trajectory *y, const int32_t *tokens, float *logp, int32_t n) {
    const int32_t before = y->drawn_count;
    for (int32_t i = y->turns ? y->start[0] : n; i < n; i++)
        if (!y->drawn[i]) {
            y->drawn[i] = 1;
            logp[i] = NAN;
        }
    trajectory_count(y, tokens, n);
    y->masked -= y->drawn_count - before;
}

/* Whether a turn of a trajectory has neither a readable call nor a final answer: its call could not be read, or a limit
 * cut it off (SimpleTIR: 2509.02479). */
static inline bool trajectory_void(const Trajectory *y) {
    return y->counts.parse_errors > 0 || trajectory_truncated(y->stop);
}

/* Whether a tool or a program failed, so that there is nothing to score (NULL: a completion of one turn). */
static inline bool trajectory_lost(const Trajectory *y) {
    return y && (y->stop == STOP_TOOL_FAILED || y->stop == STOP_AGENT_FAILED);
}

/* The reward of a trajectory (NULL: a completion of one turn): `score` of its final text, NaN if that cannot be scored,
 * plus what its environment gave. NaN if nothing could be scored, or if a tool failed. */
static inline float trajectory_reward(const Trajectory *y, float score) {
    if (!y) return score;
    if (trajectory_lost(y)) return NAN;
    return isnan(y->reward) ? score : isnan(score) ? y->reward : score + y->reward;
}

/* ---- between ranks --------------------------------------------------------------------------------------------- */

enum {
    TRAJECTORY_COUNTS = sizeof(TrajectoryCounts) / sizeof(int32_t),
    TRAJECTORY_NAME_WORDS = TRAJECTORY_NAME / sizeof(int32_t),
    TRAJECTORY_HEAD = 6 + TRAJECTORY_COUNTS + 2 * TRAJECTORY_NAME_WORDS
};

/* The number of 32-bit words of trajectory_pack(). */
static inline int64_t trajectory_words(const Trajectory *y, int32_t tokens) {
    return TRAJECTORY_HEAD + 7 * (int64_t)y->turns + y->branches + (tokens + 3) / 4;
}

/* Writes a trajectory of `tokens` tokens as words to `to`, without its messages. Returns their number. */
static inline int64_t trajectory_pack(const Trajectory *y, int32_t tokens, int32_t *to) {
    int32_t *at = to;
    *at++ = (int32_t)y->stop;
    *at++ = y->turns;
    *at++ = y->branches;
    *at++ = y->first;
    memcpy(at++, &y->reward, sizeof y->reward);
    memcpy(at++, &y->end_reward, sizeof y->end_reward);
    memcpy(at, &y->counts, sizeof y->counts);
    at += TRAJECTORY_COUNTS;
    memcpy(at, y->role, sizeof y->role);
    at += TRAJECTORY_NAME_WORDS;
    memcpy(at, y->episode_id, sizeof y->episode_id);
    at += TRAJECTORY_NAME_WORDS;
    memcpy(at, y->turn_reward, (size_t)y->turns * sizeof *y->turn_reward);
    at += y->turns;
    memcpy(at, y->start, (size_t)y->turns * sizeof *y->start);
    at += y->turns;
    memcpy(at, y->malformed, (size_t)y->turns * sizeof *y->malformed);
    at += y->turns;
    memcpy(at, y->began, (size_t)y->turns * sizeof *y->began);
    at += y->turns;
    memcpy(at, y->ended, (size_t)y->turns * sizeof *y->ended);
    at += y->turns;
    memcpy(at, y->state, (size_t)y->turns * sizeof *y->state);
    at += 2 * y->turns;
    if (y->branches) memcpy(at, y->branch, (size_t)y->branches * sizeof *y->branch);
    at += y->branches;
    memset(at, 0, (size_t)((tokens + 3) / 4) * sizeof *at);
    memcpy(at, y->drawn, (size_t)tokens);
    return trajectory_words(y, tokens);
}

/* Reads what trajectory_pack() wrote of the completion with these tokens. */
static inline Trajectory *trajectory_unpack(const int32_t *from, const int32_t *tokens, int32_t n) {
    Trajectory *y = trajectory_new((size_t)n);
    const int32_t *at = from;
    y->stop = (TrajectoryStop)*at++;
    while (y->turns < at[0]) trajectory_turn(y);
    at++;
    while (y->branches < at[0]) trajectory_branch(y, 0);
    at++;
    y->first = *at++;
    memcpy(&y->reward, at++, sizeof y->reward);
    memcpy(&y->end_reward, at++, sizeof y->end_reward);
    memcpy(&y->counts, at, sizeof y->counts);
    at += TRAJECTORY_COUNTS;
    memcpy(y->role, at, sizeof y->role);
    at += TRAJECTORY_NAME_WORDS;
    memcpy(y->episode_id, at, sizeof y->episode_id);
    at += TRAJECTORY_NAME_WORDS;
    memcpy(y->turn_reward, at, (size_t)y->turns * sizeof *y->turn_reward);
    at += y->turns;
    memcpy(y->start, at, (size_t)y->turns * sizeof *y->start);
    at += y->turns;
    memcpy(y->malformed, at, (size_t)y->turns * sizeof *y->malformed);
    at += y->turns;
    memcpy(y->began, at, (size_t)y->turns * sizeof *y->began);
    at += y->turns;
    memcpy(y->ended, at, (size_t)y->turns * sizeof *y->ended);
    at += y->turns;
    memcpy(y->state, at, (size_t)y->turns * sizeof *y->state);
    at += 2 * y->turns;
    if (y->branches) memcpy(y->branch, at, (size_t)y->branches * sizeof *y->branch);
    at += y->branches;
    memcpy(y->drawn, at, (size_t)n);
    trajectory_count(y, tokens, n);
    return y;
}

#endif
