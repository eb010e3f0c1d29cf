/* rewards.h - rewards of completions, as weighted sums of named parts.
 *
 * A specification is a comma-separated list of parts, `name[=argument][:weight]`; the default weight is 1.
 *
 *     verify                                   the check of the record's task (verify.h): 1 or 0
 *     verify:1,format=hash:0.1                 plus 0.1 for the format
 *     regex=/^\d+$/:0.5,regex=/sorry/i:-1      several patterns; \/ is a slash; flags i m s x after the second slash
 *     verify,overlong=20/100,repetition=3/-1   the numbers of an argument are separated by slashes
 *
 *   part                     argument                      value (tokens = length of the completion)
 *   verify                   -                             the check of the record's task: see the table in verify.h
 *   exact numeric math hash  -                             this check, for any task; hash: the number after `####`
 *   em f1 choice             -                             the same
 *   countdown                all, or none                  the same; all: each number must be used exactly once
 *   sort brackets            -                             the same
 *   code                     all|fraction|threshold/P      tests of a program (code_judge.h): 1 if all pass; the share
 *                                                          that passes; 1 if it is at least P (0.8)
 *   regex                    /pattern/flags, or none       1 if found; without argument, the record's pattern
 *   format                   think|hash|boxed|answer       1 if the completion has the format (default think, as TRL)
 *   cosine                   MAX/WRONG_SHORT/WRONG_LONG/RIGHT_LONG/RIGHT_SHORT
 *                                                          TRL get_cosine_scaled_reward; correctness by the task's
 *                                                          check; default -1 -0.5 0.5 1
 *   overlong                 CACHE/MAX                     TRL get_soft_overlong_punishment (DAPO eq. 13);
 *                                                          default MAX / 5
 *   repetition               N/PENALTY                     TRL get_repetition_penalty_reward over token ids;
 *                                                          default 3, -1
 *   length                   TARGET/ALPHA                  -ALPHA |TARGET - tokens| (L1-Exact, arXiv 2503.04697);
 *                                                          ALPHA 0.0003
 *   turns                    TARGET/ALPHA                  -ALPHA |TARGET - turns of the model|; ALPHA 0.1
 *   tool-use                 MIN/MAX                       1 if the completion has MIN (1) to MAX (any number of) calls of tools
 *   random                   P                             control: 1 with probability P (0.5); the draw depends only
 *                                                          on (seed, id)
 *   command                  -                             the program of --reward-cmd (reward_command.h)
 *   model                    FILE, or none                 a reward model's normalised score (reward_model.h); without
 *                                                          argument, that of --reward-model. The trainers only
 *   judge                    score|rubric|pair|group       a language model's verdict (../judge/judged.h)
 *
 * MAX defaults to the maximum length of sampled completions. A part that could not be scored is NaN. The sum is over
 * the other parts (TRL's nansum) and is NaN if no part has a value; trainers exclude such completions.
 *
 *     Rewards r;
 *     if (!rewards_open(&r, "verify:1,format=hash:0.1", NULL, 60, seed, max_tokens, &e)) die("%s", e.text);
 *     rewards_score(&r, inputs, n, parts, totals, &e);      // parts (n, r.count), totals (n)
 */
#ifndef LLMC_REWARD_REWARDS_H
#define LLMC_REWARD_REWARDS_H

#include "../base/error.h"      /* error_set, Error, xcalloc, xstrndup, ... */
#include "../base/options.h"    /* option_choice_index */
#include "../base/random.h"     /* RANDOM_REWARD, random_uniform */
#include "../sandbox/sandbox.h" /* Sandbox, SandboxOptions, sandbox_close, sandbox_open_here */
#include "code_reward.h"        /* CodeVerdict, CODE_REWARD_ALL, code_reward, CODE_REWARD_THRESHOLD, ... */
#include "reward_command.h"     /* RewardCommand, reward_command_close, reward_command_open, ... */
#include "verify.h"             /* VERIFY_CODE, verify_score, VERIFY_COUNTDOWN, VERIFY_REGEX, ... */
#include "verify_answer.h"      /* RewardInput, verify_completion, VerifySpan */
#include "verify_pattern.h"     /* VerifyRegex, verify_regex_compile, verify_regex_free, verify_regex_match, ... */
#include "verify_rational.h"    /* rational_available */

enum { REWARDS_MAX = 16, REWARD_ARGUMENTS = 5 };

typedef enum {
    REWARD_VERIFY,
    REWARD_CHECK,
    REWARD_CODE,
    REWARD_REGEX,
    REWARD_FORMAT,
    REWARD_COSINE,
    REWARD_OVERLONG,
    REWARD_REPETITION,
    REWARD_LENGTH,
    REWARD_TURNS,
    REWARD_TOOL_USE,
    REWARD_RANDOM,
    REWARD_COMMAND,
    REWARD_MODEL,
    REWARD_JUDGE
} RewardKind;

typedef struct RewardPart {
    RewardKind kind;
    VerifyKind check;               /* REWARD_CHECK */
    double value[REWARD_ARGUMENTS]; /* numbers of the argument, with defaults filled in */
    VerifyRegex regex;              /* REWARD_FORMAT, REWARD_REGEX with a pattern */
    char *path;                     /* REWARD_MODEL: the model's file, or NULL */
} RewardPart;

typedef struct Rewards {
    int count;
    char *name[REWARDS_MAX]; /* name in metrics; a second part of the same kind gets _2 */
    double weight[REWARDS_MAX];
    RewardPart part[REWARDS_MAX];
    RewardCommand command; /* not running if there is none */
    /* Computes part k, a reward model's, of n completions: scores[i * stride]. Set by programs with such models. */
    bool (*score_model)(void *context, int k, const RewardInput *in, int n, float *scores, int stride, Error *e);
    void *context; /* its first argument */
    /* The same for a part `judge` of this mode (judge/judged.h). Set by programs with a judge. */
    bool (*score_judge)(void *judge, int mode, const RewardInput *in, int n, float *scores, int stride, Error *e);
    void *judge;      /* its first argument */
    CodeScorer *code; /* runs programs (code_judge.h); NULL: completions that are programs cannot be scored */
    char *program;
    Sandbox *sandbox; /* in which the program runs; NULL: in none */
    uint64_t seed;
} Rewards;

/* ---- parts ----------------------------------------------------------------------------------------------------- */

/* R(y) = v_min + (v_max - v_min)(1 + cos(pi min(|y| / L_max, 1))) / 2; for a wrong answer the bounds are swapped, so
 * that a short wrong answer has the lower reward (arXiv 2502.03373, C.1; TRL get_cosine_scaled_reward). v: L_max, wrong
 * short, wrong long, right long, right short. */
static inline double reward_cosine(bool right, int32_t tokens, const double v[5]) {
    const double progress = fmin((double)tokens / v[0], 1.0);
    const double low = right ? v[3] : v[2], high = right ? v[4] : v[1];
    return low + 0.5 * (high - low) * (1.0 + cos(progress * M_PI));
}

/* 0 up to max - cache, then linear, -1 above max (DAPO, arXiv 2503.14476, eq. 13; TRL get_soft_overlong_punishment). */
static inline double reward_overlong(int32_t tokens, double max, double cache) {
    if (tokens <= max - cache) return 0;
    return tokens <= max ? (max - cache - tokens) / cache : -1;
}

static inline int reward_compare(const void *a, const void *b, void *bytes) {
    return memcmp(*(const unsigned char *const *)a, *(const unsigned char *const *)b, *(const size_t *)bytes);
}

/* penalty (1 - distinct n-grams / n-grams), 0 if shorter than n (arXiv 2502.03373, C.2; TRL
 * get_repetition_penalty_reward). Each item has `size` bytes. */
static inline double reward_repetition(const void *items, size_t count, size_t size, size_t n, double penalty) {
    if (count < n) return 0;
    const size_t grams = count - n + 1;
    size_t bytes = n * size, distinct = 1;
    const unsigned char **gram = (const unsigned char **)xcalloc(grams, sizeof *gram);
    for (size_t i = 0; i < grams; i++) gram[i] = (const unsigned char *)items + i * size;
    qsort_r(gram, grams, sizeof *gram, reward_compare, &bytes);
    for (size_t i = 1; i < grams; i++) distinct += memcmp(gram[i - 1], gram[i], bytes) != 0;
    free(gram);
    return distinct == grams ? 0 : penalty * (1.0 - (double)distinct / (double)grams);
}

#define REWARD_JUDGES  "score|rubric|pair|group" /* in the order of JudgeMode (judge/judge_options.h) */
#define REWARD_FORMATS "think|hash|boxed|answer" /* in the order of reward_format_pattern() */

static inline const char *reward_format_pattern(int format) {
    switch (format) {
    case 0: return "^<think>(?!.*<think>)(.*?)</think>.*$"; /* TRL think_format_reward */
    case 1: return "\\A.*#### *[-+]?\\$?\\.?\\d[\\d,]*(\\.\\d+)?\\.?\\s*\\z";
    case 2: return "\\A.*\\\\boxed(\\{(?:[^{}]++|(?1))+\\})[^{}]*\\z";
    default: return "\\A\\s*<think>(?!.*<think>).*?</think>\\s*<answer>(?!.*<answer>).*?</answer>\\s*\\z";
    }
}

/* ---- specification --------------------------------------------------------------------------------------------- */

/* Reads up to `most` numbers separated by slashes; values that are not given are unchanged. */
static inline bool reward_numbers(const char *name, const char *text, size_t n, double *value, int most, Error *e) {
    char *word = xstrndup(text, n), *at = word, *end;
    bool good = n > 0;
    for (int i = 0; good && *at; i++) {
        const double number = strtod(at, &end);
        good = i < most && end != at && isfinite(number) && (*end == 0 || (*end == '/' && end[1]));
        if (good) {
            value[i] = number;
            at = *end ? end + 1 : end;
        }
    }
    if (!good)
        error_set(e, "reward %s=%s: must be up to %d number%s separated by '/'", name, word, most,
                  most == 1 ? "" : "s");
    free(word);
    return good;
}

/* TARGET/ALPHA of the part turns. */
static inline bool reward_turns_argument(double *v, const char *text, size_t n, Error *e) {
    v[0] = -1;
    v[1] = 0.1;
    if (n && !reward_numbers("turns", text, n, v, 2, e)) return false;
    return v[0] >= 1 || error_set(e, "reward turns: needs a target of at least 1, as in turns=2 or turns=2/0.05");
}

/* MIN/MAX of the part tool-use. */
static inline bool reward_tool_use_argument(double *v, const char *text, size_t n, Error *e) {
    v[0] = 1;
    v[1] = INFINITY;
    if (n && !reward_numbers("tool-use", text, n, v, 2, e)) return false;
    return (v[0] >= 0 && v[1] >= v[0]) ||
           error_set(e, "reward tool-use=%g/%g: must be the minimum and the maximum number of calls", v[0], v[1]);
}

/* Reads the argument text[0..n) of a part: fills in defaults and checks the numbers. */
static inline bool reward_argument(RewardPart *p, const char *name, const char *text, size_t n, int32_t max_tokens,
                                   Error *e) {
    double *v = p->value;
    switch (p->kind) {
    case REWARD_FORMAT: {
        char *word = xstrndup(text, n);
        const int format = n ? option_choice_index(REWARD_FORMATS, word) : 0;
        free(word);
        if (format < 0) return error_set(e, "reward format=%.*s: must be one of %s", (int)n, text, REWARD_FORMATS);
        const uint32_t options = PCRE2_DOTALL | (format == 0 ? PCRE2_ANCHORED | PCRE2_MULTILINE : 0);
        return verify_regex_compile(&p->regex, reward_format_pattern(format), options, e);
    }
    case REWARD_COSINE:
        v[0] = max_tokens;
        v[1] = -1;
        v[2] = -0.5;
        v[3] = 0.5;
        v[4] = 1;
        if (n && !reward_numbers(name, text, n, v, 5, e)) return false;
        return v[0] > 0 || error_set(e, "reward cosine: maximum length is %g, must be positive", v[0]);
    case REWARD_OVERLONG: {
        v[0] = NAN;
        v[1] = max_tokens;
        if (n && !reward_numbers(name, text, n, v, 2, e)) return false;
        if (isnan(v[0])) v[0] = floor(v[1] / 5);
        if (v[1] > 0 && v[0] >= 0 && v[0] <= v[1]) return true;
        return error_set(e, "reward overlong=%g/%g: must have 0 <= cache <= maximum length and maximum length > 0",
                         v[0], v[1]);
    }
    case REWARD_REPETITION:
        v[0] = 3;
        v[1] = -1;
        if (n && !reward_numbers(name, text, n, v, 2, e)) return false;
        if (v[0] >= 1 && v[0] <= 1e6 && v[0] == floor(v[0]) && v[1] <= 0) return true;
        return error_set(e, "reward repetition=%g/%g: must be an integer n from 1 to 1e6 and a penalty <= 0", v[0],
                         v[1]);
    case REWARD_LENGTH:
        v[0] = -1;
        v[1] = 0.0003;
        if (n && !reward_numbers(name, text, n, v, 2, e)) return false;
        return v[0] >= 0 || error_set(e, "reward length: needs a target >= 0, as in length=40 or length=40/0.01");
    case REWARD_TURNS: return reward_turns_argument(v, text, n, e);
    case REWARD_TOOL_USE: return reward_tool_use_argument(v, text, n, e);
    case REWARD_RANDOM:
        v[0] = 0.5;
        if (n && !reward_numbers(name, text, n, v, 1, e)) return false;
        return (v[0] >= 0 && v[0] <= 1) || error_set(e, "reward random=%g: must be a probability", v[0]);
    case REWARD_CODE: {
        char *word = xstrndup(text, n), *slash = strchr(word, '/');
        v[1] = 0.8;
        if (slash) *slash = 0;
        v[0] = n ? option_choice_index("all|fraction|threshold", word) : CODE_REWARD_ALL;
        const bool numbered = !slash || v[0] == CODE_REWARD_THRESHOLD;
        const bool ok =
            numbered && (!slash || reward_numbers(name, slash + 1, n - (size_t)(slash + 1 - word), v + 1, 1, e));
        free(word);
        if (ok && v[0] >= 0 && v[1] > 0 && v[1] <= 1) return true;
        return error_set(e, "reward code=%.*s: must be all, fraction or threshold/P with 0 < P <= 1", (int)n, text);
    }
    case REWARD_JUDGE: {
        char *word = xstrndup(text, n);
        v[0] = option_choice_index(REWARD_JUDGES, word);
        free(word);
        return v[0] >= 0 || error_set(e, "reward judge=%.*s: must be one of %s", (int)n, text, REWARD_JUDGES);
    }
    case REWARD_MODEL: p->path = n ? xstrndup(text, n) : NULL; return true;
    case REWARD_CHECK:
        if (p->check == VERIFY_COUNTDOWN && n == 3 && !memcmp(text, "all", n)) {
            p->check = VERIFY_COUNTDOWN_ALL;
            return true;
        } /* fall through */
    default: return !n || error_set(e, "reward %s=%.*s: takes no argument", name, (int)n, text);
    }
}

static inline bool reward_kind(const char *name, RewardPart *p) {
    static const struct {
        const char *name;
        RewardKind kind;
        VerifyKind check;
    } kinds[] = {{"verify", REWARD_VERIFY, 0},
                 {"exact", REWARD_CHECK, VERIFY_EXACT},
                 {"numeric", REWARD_CHECK, VERIFY_NUMERIC},
                 {"hash", REWARD_CHECK, VERIFY_HASH},
                 {"countdown", REWARD_CHECK, VERIFY_COUNTDOWN},
                 {"sort", REWARD_CHECK, VERIFY_SORT},
                 {"brackets", REWARD_CHECK, VERIFY_BRACKETS},
                 {"math", REWARD_CHECK, VERIFY_MATH},
                 {"em", REWARD_CHECK, VERIFY_EM},
                 {"f1", REWARD_CHECK, VERIFY_F1},
                 {"choice", REWARD_CHECK, VERIFY_CHOICE},
                 {"code", REWARD_CODE, 0},
                 {"regex", REWARD_REGEX, VERIFY_REGEX},
                 {"format", REWARD_FORMAT, 0},
                 {"cosine", REWARD_COSINE, 0},
                 {"overlong", REWARD_OVERLONG, 0},
                 {"repetition", REWARD_REPETITION, 0},
                 {"length", REWARD_LENGTH, 0},
                 {"turns", REWARD_TURNS, 0},
                 {"tool-use", REWARD_TOOL_USE, 0},
                 {"random", REWARD_RANDOM, 0},
                 {"command", REWARD_COMMAND, 0},
                 {"model", REWARD_MODEL, 0},
                 {"judge", REWARD_JUDGE, 0}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(name, kinds[i].name)) {
            p->kind = kinds[i].kind;
            p->check = kinds[i].check;
            return true;
        }
    return false;
}

/* Adds the part at *spec and moves *spec to the text after it. */
static inline bool reward_add(Rewards *r, const char **spec, int32_t max_tokens, Error *e) {
    const char *at = *spec, *argument = "";
    size_t n = strcspn(at, "=:,");
    char name[40];
    double weight = 1;
    if (r->count == REWARDS_MAX) return error_set(e, "rewards: more than %d parts", REWARDS_MAX);
    RewardPart *p = &r->part[r->count];
    *p = (RewardPart){0};
    snprintf(name, sizeof name, "%.*s", (int)(n < sizeof name ? n : sizeof name - 1), at);
    if (!reward_kind(name, p))
        return error_set(
            e,
            "reward '%s': unknown, must be verify, exact, em, f1, choice, numeric, math, hash, countdown, sort, "
            "brackets, code, regex, format, cosine, overlong, repetition, length, turns, tool-use, random, command, model "
            "or judge",
            name);
    at += n;
    n = 0;
    if (*at == '=') {
        argument = ++at;
        if (p->kind == REWARD_REGEX) {
            Error inner;
            if (!verify_regex_parse(&p->regex, at, &at, &inner)) return error_set(e, "reward regex=%s", inner.text);
        } else {
            n = strcspn(at, ":,");
            at += n;
        }
        if (!n && p->kind != REWARD_REGEX) return error_set(e, "reward %s: nothing after '='", name);
    }
    r->count++; /* from here on, rewards_close() frees it */
    if (!reward_argument(p, name, argument, n, max_tokens, e)) return false;
    if (*at == ':') {
        char *end;
        weight = strtod(at + 1, &end);
        if (end == at + 1 || !isfinite(weight) || (*end && *end != ','))
            return error_set(e, "reward %s: weight '%.40s' is not a number", name, at + 1);
        at = end;
    }
    if (*at && *at != ',')
        return error_set(e, "reward %s: '%.40s' is unexpected, must be name[=argument][:weight],...", name, at);
    if (*at && !at[1]) return error_set(e, "rewards: nothing after the last comma");
    int same = 1;
    for (int i = 0; i < r->count - 1; i++) same += r->part[i].kind == p->kind && r->part[i].check == p->check;
    if (same > 1) snprintf(name + strlen(name), sizeof name - strlen(name), "_%d", same);
    r->name[r->count - 1] = xstrdup(name);
    r->weight[r->count - 1] = weight;
    *spec = *at ? at + 1 : at;
    return true;
}

static inline void rewards_close(Rewards *r) {
    if (r->program) reward_command_close(&r->command);
    if (r->sandbox) sandbox_close(r->sandbox);
    free(r->sandbox);
    for (int i = 0; i < r->count; i++) {
        verify_regex_free(&r->part[i].regex);
        free(r->part[i].path);
        free(r->name[i]);
    }
    free(r->program);
    *r = (Rewards){0};
}

/* The number of parts that are reward models. */
static inline int rewards_models(const Rewards *r) {
    int n = 0;
    for (int i = 0; i < r->count; i++) n += r->part[i].kind == REWARD_MODEL;
    return n;
}

/* The modes of the parts that a judge scores, as bits 1 << JudgeMode; 0: there are none. */
static inline unsigned rewards_judge_modes(const Rewards *r) {
    unsigned modes = 0;
    for (int i = 0; i < r->count; i++)
        if (r->part[i].kind == REWARD_JUDGE) modes |= 1u << (int)r->part[i].value[0];
    return modes;
}

/* Adds a part of weight 1, `model`, for the reward model of a separate option, unless the parts have it. */
static inline bool rewards_add_model(Rewards *r, Error *e) {
    const char *spec = "model";
    for (int i = 0; i < r->count; i++)
        if (r->part[i].kind == REWARD_MODEL && !r->part[i].path) return true;
    return reward_add(r, &spec, 1, e);
}

/* Reads a specification and starts the program `command` (NULL: none). A spec of NULL or "" means `command` if there is
 * a program, else `verify`. A program that the specification does not mention is added as a part `command` of weight 1.
 * timeout: seconds per batch; box: the sandbox that the program runs in, or NULL; max_tokens: maximum length of sampled
 * completions. */
static inline bool rewards_open_in(Rewards *r, const char *spec, const char *command, double timeout,
                                   const SandboxOptions *box, uint64_t seed, int32_t max_tokens, Error *e) {
    bool listed = false;
    *r = (Rewards){.seed = seed};
    if (!spec || !*spec) spec = command ? "command" : "verify";
    while (*spec)
        if (!reward_add(r, &spec, max_tokens, e)) goto failed;
    for (int i = 0; i < r->count; i++) {
        listed |= r->part[i].kind == REWARD_COMMAND;
        if ((r->part[i].kind == REWARD_VERIFY || r->part[i].kind == REWARD_COSINE || r->part[i].kind == REWARD_CHECK) &&
            !rational_available(e))
            goto failed;
    }
    if (listed && !command) {
        error_set(e, "reward command: no program is given");
        goto failed;
    }
    if (command && !listed) {
        spec = "command";
        if (!reward_add(r, &spec, max_tokens, e)) goto failed;
    }
    if (!command) return true;
    if (box) {
        r->sandbox = (Sandbox *)xcalloc(1, sizeof *r->sandbox);
        if (!sandbox_open_here(r->sandbox, box, e)) goto failed;
    }
    r->program = xstrdup(command);
    if (reward_command_open(&r->command, r->program, timeout, r->sandbox, e)) return true;
failed:
    rewards_close(r);
    return false;
}

/* rewards_open_in() no sandbox. */
static inline bool rewards_open(Rewards *r, const char *spec, const char *command, double timeout, uint64_t seed,
                                int32_t max_tokens, Error *e) {
    return rewards_open_in(r, spec, command, timeout, NULL, seed, max_tokens, e);
}

/* Starts more copies of the program, up to `workers`. groups: it gets all completions to a prompt at once. Fails if there is
 * no program. */
static inline bool rewards_workers(Rewards *r, int workers, bool groups, Error *e) {
    if (!r->program) return error_set(e, "there is no reward program");
    r->command.groups = groups;
    while (r->command.workers < workers)
        if (!reward_command_worker(&r->command, e)) return false;
    return true;
}

/* ---- scoring --------------------------------------------------------------------------------------------------- */

/* The check of the record's task, as rewards_verify(). program: the verdict of a completion that is a program, or NULL. */
static inline bool reward_verify(const RewardInput *in, const CodeVerdict *program, float *value) {
    if (!program || verify_kind(in->task) != VERIFY_CODE) return rewards_verify(in, value);
    *value = code_reward(program, CODE_REWARD_ALL, 0);
    return true;
}

/* Computes the value of one part (except `command`) for one completion; false if the record's task is unknown. program: as
 * for reward_verify(). */
static inline bool reward_part(const Rewards *r, const RewardPart *p, const RewardInput *in, const CodeVerdict *program,
                               float *value) {
    const double *v = p->value;
    switch (p->kind) {
    case REWARD_VERIFY: return reward_verify(in, program, value);
    case REWARD_CODE:
        *value = program ? code_reward(program, (CodeReward)v[0], v[1]) : verify_score(in, VERIFY_CODE);
        return true;
    case REWARD_CHECK: *value = verify_score(in, p->check); return true;
    case REWARD_REGEX:
        if (!p->regex.code) {
            *value = verify_score(in, VERIFY_REGEX);
            return true;
        } /* fall through */
    case REWARD_FORMAT: *value = verify_regex_match(&p->regex, verify_completion(in)); return true;
    case REWARD_COSINE:
        if (!reward_verify(in, program, value)) return false;
        if (!isnan(*value)) *value = (float)reward_cosine(*value > 0, in->tokens, v);
        return true;
    case REWARD_OVERLONG: *value = (float)reward_overlong(in->tokens, v[1], v[0]); return true;
    case REWARD_REPETITION: {
        const VerifySpan text = verify_completion(in);
        *value = (float)(in->ids ? reward_repetition(in->ids, (size_t)in->tokens, sizeof *in->ids, (size_t)v[0], v[1])
                                 : reward_repetition(text.s, text.n, 1, (size_t)v[0], v[1]));
        return true;
    }
    case REWARD_LENGTH: *value = (float)(-v[1] * fabs(v[0] - in->tokens)); return true;
    case REWARD_TURNS: *value = (float)(-v[1] * fabs(v[0] - (in->turns ? in->turns : 1))); return true;
    case REWARD_TOOL_USE: *value = in->calls >= v[0] && in->calls <= v[1]; return true;
    default: *value = random_uniform(r->seed, RANDOM_REWARD + in->id, 0) < v[0] ? 1 : 0; return true;
    }
}

/* The error of a record for whose task part k has no verifier. */
static inline bool rewards_unknown(const Rewards *r, int k, const RewardInput *in, Error *e) {
    return error_set(e, "reward %s: task '%.80s' has no verifier, must be " VERIFY_TASKS, r->name[k],
                     in->task ? in->task : "");
}

/* Whether a completion of a record can be scored: whether a part has a value, here for an empty completion. A program,
 * a reward model or a judge is taken to score everything. Fails if the record's task is unknown. */
static inline bool rewards_scorable(const Rewards *r, const RewardInput *in, bool *scorable, Error *e) {
    *scorable = false;
    for (int k = 0; k < r->count; k++) {
        float value = 0;
        const RewardKind kind = r->part[k].kind;
        const bool any = kind == REWARD_COMMAND || kind == REWARD_MODEL || kind == REWARD_JUDGE;
        if (!any && !reward_part(r, &r->part[k], in, NULL, &value)) return rewards_unknown(r, k, in, e);
        *scorable = *scorable || !isnan(value);
    }
    return true;
}

/* Whether a part runs a completion of this task, if it is a program. */
static inline bool reward_runs(const RewardPart *p, const char *task) {
    const bool verifies = p->kind == REWARD_VERIFY || p->kind == REWARD_COSINE;
    return p->kind == REWARD_CODE || (verifies && verify_kind(task) == VERIFY_CODE);
}

/* Whether a completion of this task is a program that the rewards run. */
static inline bool rewards_run(const Rewards *r, const char *task) {
    for (int k = 0; k < r->count; k++)
        if (reward_runs(&r->part[k], task)) return true;
    return false;
}

/* Runs the programs among n completions: *verdict[i] is that of completion i, to be freed; NULL if there is none to run. */
static inline bool rewards_programs(Rewards *r, const RewardInput *in, int n, CodeVerdict **verdict, Error *e) {
    bool stop = true;
    int count = 0;
    *verdict = NULL;
    for (int k = 0; k < r->count; k++) stop = stop && (r->part[k].kind != REWARD_CODE || r->part[k].value[0] == 0);
    for (int i = 0; i < n; i++) count += rewards_run(r, in[i].task);
    if (!r->code || !count) return true;
    RewardInput *some = (RewardInput *)xcalloc((size_t)count, sizeof *some);
    CodeVerdict *got = (CodeVerdict *)xcalloc((size_t)count, sizeof *got);
    *verdict = (CodeVerdict *)xcalloc((size_t)n, sizeof **verdict);
    for (int i = 0, k = 0; i < n; i++)
        if (rewards_run(r, in[i].task)) some[k++] = in[i];
    const bool ok = r->code->score(r->code, some, count, stop, got, e);
    for (int i = 0, k = 0; i < n; i++)
        if (rewards_run(r, in[i].task)) (*verdict)[i] = got[k++];
    free(some), free(got);
    return ok;
}

/* Scores n completions. parts: (n, count), NaN = could not be scored; total: (n), the weighted sum over the parts that
 * have a value, NaN if none has. Fails if a task is unknown or the program fails. */
static inline bool rewards_score(Rewards *r, const RewardInput *in, int n, float *parts, float *total, Error *e) {
    CodeVerdict *program;
    bool ok = rewards_programs(r, in, n, &program, e);
    for (int k = 0; ok && k < r->count; k++) {
        if (r->part[k].kind == REWARD_MODEL) {
            if (!r->score_model) ok = error_set(e, "reward model: no reward model can be used here");
            ok = ok && r->score_model(r->context, k, in, n, parts + k, r->count, e);
            continue;
        }
        if (r->part[k].kind == REWARD_JUDGE) {
            if (!r->score_judge) ok = error_set(e, "reward judge: give the judge, as --judge FILE");
            ok = ok && r->score_judge(r->judge, (int)r->part[k].value[0], in, n, parts + k, r->count, e);
            continue;
        }
        if (r->part[k].kind == REWARD_COMMAND) {
            ok = reward_command_score(&r->command, in, n, parts + k, r->count, e);
            continue;
        }
        for (int i = 0; ok && i < n; i++)
            if (!reward_part(r, &r->part[k], &in[i], program ? &program[i] : NULL,
                             &parts[(size_t)i * (size_t)r->count + (size_t)k]))
                ok = rewards_unknown(r, k, &in[i], e);
    }
    free(program);
    if (!ok) return false;
    for (int i = 0; i < n; i++) {
        double sum = 0;
        bool any = false;
        for (int k = 0; k < r->count; k++) {
            const double value = parts[(size_t)i * (size_t)r->count + (size_t)k];
            if (!isnan(value)) {
                sum += r->weight[k] * value;
                any = true;
            }
        }
        total[i] = any ? (float)sum : NAN;
    }
    return true;
}

#endif
