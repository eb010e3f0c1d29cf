/* judged.h - rewards of completions by a judge: the parts `judge=score`, `judge=rubric`, `judge=pair` and `judge=group`.
 *
 *   score    its expected score, as 0 to 1
 *   rubric   sum_j w_j P(yes)_j / sum_j w_j over the criteria of the record's field `rubric`: a list of texts, or of
 *            {"text": "...", "weight": w} with w > 0. --rubric-at-once: one question lists them all
 *   pair     the mean over its opponents of the probability of being better: all other completions of its prompt, a drawn
 *            number of them, or the record's answer (--judge-opponents)
 *   group    its expected score in a question that lists all completions of its prompt, in random order
 *
 * A completion that could not be judged is NaN: its question does not fit the judge's context, its record has no rubric or
 * no answer to compare with, it has no opponent.
 *
 *     Judge judge;
 *     Rewards rewards;
 *     RewardInput in[4] = {0};
 *     float part[4], total[4];
 *     if (!judge_attach(&judge, &rewards, &e)) return false; // the parts of --reward; fails if one of them cannot be asked
 *     if (!rewards_score(&rewards, in, 4, part, total, &e)) return false;
 */
#ifndef LLMC_JUDGE_JUDGED_H
#define LLMC_JUDGE_JUDGED_H

#include "../base/error.h"           /* xcalloc, Error, error_set, xrealloc */
#include "../base/options.h"         /* Option */
#include "../base/random.h"          /* RANDOM_JUDGE, Random, random_shuffle, random_start */
#include "../base/text.h"            /* TextSlice, text_string, text_format, TextBuffer, ... */
#include "../model/backend.h"        /* Backend, Device */
#include "../reward/rewards.h"       /* Rewards, REWARD_JUDGE, rewards_judge_modes */
#include "../reward/verify_answer.h" /* RewardInput, VerifySpan, verify_completion, verify_fields, ... */
#include "judge.h"                   /* Judge, JudgePair, judge_ask, judge_open, ... */
#include "judge_options.h"           /* JudgeMode, JUDGE_BY_RUBRIC, JUDGE_BY_PAIR, JUDGE_BY_SCORE, ... */
#include "labels.h"                  /* JudgeSums */
#include "question.h"                /* JudgeQuestion, JUDGE_ANSWER, JUDGE_COMPLETION, JUDGE_COMPLETIONS, ... */

/* The texts of a completion's record for a question. */
typedef struct JudgeRecord {
    TextSlice prompt, messages; /* owned */
    json_t *fields;
} JudgeRecord;

static inline void judge_append_json(const json_t *value, TextBuffer *out) {
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    text_string(out, text ? text : "");
    free(text);
}

/* Appends messages, each with its calls of tools after its content. roles: each follows its role. */
static inline void judge_append_messages(const json_t *messages, bool roles, TextBuffer *out) {
    size_t i;
    const json_t *message;
    json_array_foreach(messages, i, message) {
        const json_t *content = json_object_get(message, "content"), *calls = json_object_get(message, "tool_calls");
        const char *role = json_string_value(json_object_get(message, "role"));
        if (i) text_string(out, "\n\n");
        if (roles) text_format(out, "%s: ", role ? role : "user");
        const size_t before = out->length;
        if (json_is_string(content)) text_append(out, json_string_value(content), json_string_length(content));
        else if (json_is_array(content) || json_is_object(content)) judge_append_json(content, out);
        if (!json_array_size(calls)) continue;
        if (out->length > before) text_string(out, "\n");
        judge_append_json(calls, out);
    }
}

static inline JudgeRecord judge_record(const RewardInput *in) {
    JudgeRecord r = {.fields = verify_fields(in)};
    const json_t *given = json_object_get(r.fields, "messages");
    const VerifySpan said = verify_completion(in);
    TextBuffer prompt = {0}, all = {0};
    text_clear(&prompt);
    text_clear(&all);
    if (json_array_size(given)) judge_append_messages(given, json_array_size(given) > 1, &prompt);
    else text_string(&prompt, in->prompt ? in->prompt : "");
    if (json_array_size(given)) judge_append_messages(given, true, &all);
    else text_format(&all, "user: %s", prompt.text);
    text_string(&all, "\n\n");
    if (in->messages) judge_append_messages(in->messages, true, &all);
    else {
        text_string(&all, "assistant: ");
        text_append(&all, said.s, said.n);
    }
    r.prompt = (TextSlice){prompt.text, prompt.length};
    r.messages = (TextSlice){all.text, all.length};
    return r;
}

static inline void judge_record_free(JudgeRecord *r) {
    free((char *)r->prompt.text), free((char *)r->messages.text);
    json_decref(r->fields);
}

static inline TextSlice judge_slice(const char *text) { return (TextSlice){text ? text : "", text ? strlen(text) : 0}; }

static inline TextSlice judge_said(const RewardInput *in) {
    const VerifySpan said = verify_completion(in);
    return (TextSlice){said.s, said.n};
}

/* The question about one completion. */
static inline JudgeQuestion judge_question(const Judge *j, const RewardInput *in, const JudgeRecord *r) {
    JudgeQuestion q = {0};
    q.field[JUDGE_PROMPT] = r->prompt;
    q.field[JUDGE_COMPLETION] = judge_said(in);
    q.field[JUDGE_ANSWER] = judge_slice(in->answer);
    q.field[JUDGE_MESSAGES] = r->messages;
    q.field[JUDGE_PRINCIPLE] = judge_principle(j, in->id);
    q.field[JUDGE_SCALE] = judge_slice(j->scale);
    return q;
}

/* ---- score and rubric -------------------------------------------------------------------------------------------- */

static inline bool judge_scores(Judge *j, const RewardInput *in, const JudgeRecord *r, int n, double *value, Error *e) {
    JudgeQuestion *q = (JudgeQuestion *)xcalloc((size_t)n + 1, sizeof *q);
    for (int i = 0; i < n; i++) q[i] = judge_question(j, &in[i], &r[i]);
    const bool ok = judge_ask(j, JUDGE_BY_SCORE, q, n, false, value, e);
    free(q);
    return ok;
}

/* A criterion of a rubric. */
typedef struct JudgeCriterion {
    TextSlice text;
    double weight;
} JudgeCriterion;

/* The criteria of n completions: first[i] ... first[i + 1] - 1 are those of completion i. */
typedef struct JudgeCriteria {
    int64_t *first; /* (n + 1) */
    JudgeCriterion *item;
    double *met; /* probability that the completion meets the criterion; NaN: no answer */
} JudgeCriteria;

static inline void judge_criteria_free(JudgeCriteria *c) { free(c->first), free(c->item), free(c->met); }

/* Reads criterion k of a rubric. */
static inline bool judge_criterion(const json_t *rubric, size_t k, JudgeCriterion *to, Error *e) {
    const json_t *item = json_array_get(rubric, k), *value = json_object_get(item, "text"),
                 *w = json_object_get(item, "weight");
    if (json_is_string(item)) value = item;
    to->text = (TextSlice){json_string_value(value), json_string_length(value)};
    to->weight = w ? json_number_value(w) : 1;
    if (!to->text.length) return error_set(e, "rubric: criterion %zu is neither a text nor an object with a text", k);
    return (isfinite(to->weight) && to->weight > 0) ||
           error_set(e, "rubric: the weight of criterion %zu must be a number above 0", k);
}

/* Reads the criteria of n records, which may have none. */
static inline bool judge_criteria_read(JudgeCriteria *c, const JudgeRecord *r, int n, Error *e) {
    *c = (JudgeCriteria){.first = (int64_t *)xcalloc((size_t)n + 1, sizeof *c->first)};
    for (int i = 0; i < n; i++) {
        const json_t *rubric = verify_present(r[i].fields, "rubric");
        const size_t from = (size_t)c->first[i], count = json_array_size(rubric);
        if (rubric && !json_is_array(rubric)) return error_set(e, "rubric: must be a list of criteria");
        c->item = (JudgeCriterion *)xrealloc(c->item, from + count + 1, sizeof *c->item);
        for (size_t k = 0; k < count; k++)
            if (!judge_criterion(rubric, k, &c->item[from + k], e)) return false;
        c->first[i + 1] = (int64_t)(from + count);
    }
    c->met = (double *)xcalloc((size_t)c->first[n] + 1, sizeof *c->met);
    return true;
}

/* Asks a question about each criterion of each completion. */
static inline bool judge_ask_each(Judge *j, const RewardInput *in, const JudgeRecord *r, int n, JudgeCriteria *c,
                                  Error *e) {
    JudgeQuestion *q = (JudgeQuestion *)xcalloc((size_t)c->first[n] + 1, sizeof *q);
    for (int i = 0; i < n; i++)
        for (int64_t at = c->first[i]; at < c->first[i + 1]; at++) {
            q[at] = judge_question(j, &in[i], &r[i]);
            q[at].field[JUDGE_RUBRIC] = c->item[at].text;
        }
    const bool ok = judge_ask(j, JUDGE_BY_RUBRIC, q, c->first[n], false, c->met, e);
    free(q);
    return ok;
}

/* Sets *list to criteria as one text, a numbered line each. */
static inline bool judge_criteria_list(const JudgeCriterion *item, int64_t count, TextBuffer *list, Error *e) {
    if (count > JUDGE_CRITERIA_MAX)
        return error_set(e, "rubric: has %lld criteria; --rubric-at-once allows up to %d", (long long)count,
                         JUDGE_CRITERIA_MAX);
    text_clear(list);
    for (int64_t k = 0; k < count; k++) {
        text_format(list, "%s%lld. ", k ? "\n" : "", (long long)k + 1);
        text_append(list, item[k].text.text, item[k].text.length);
    }
    return true;
}

/* Asks one question about all criteria of each completion (--rubric-at-once). Completions with equally many criteria are
 * asked together. */
static inline bool judge_ask_at_once(Judge *j, const RewardInput *in, const JudgeRecord *r, int n, JudgeCriteria *c,
                                     Error *e) {
    JudgeQuestion *q = (JudgeQuestion *)xcalloc((size_t)n + 1, sizeof *q);
    TextBuffer *list = (TextBuffer *)xcalloc((size_t)n + 1, sizeof *list);
    double *met = (double *)xcalloc((size_t)c->first[n] + 1, sizeof *met);
    int *which = (int *)xcalloc((size_t)n + 1, sizeof *which); /* completions that are asked together */
    bool ok = true;
    for (int i = 0; ok && i < n; i++)
        ok = judge_criteria_list(c->item + c->first[i], c->first[i + 1] - c->first[i], &list[i], e);
    for (int criteria = 1; ok && criteria <= JUDGE_CRITERIA_MAX; criteria++) {
        int count = 0;
        for (int i = 0; i < n; i++) {
            if (c->first[i + 1] - c->first[i] != criteria) continue;
            q[count] = judge_question(j, &in[i], &r[i]);
            q[count].field[JUDGE_RUBRIC] = (TextSlice){list[i].text, list[i].length};
            which[count++] = i;
        }
        ok = !count || judge_ask_criteria(j, q, count, criteria, met, e);
        for (int i = 0; ok && i < count; i++)
            memcpy(c->met + c->first[which[i]], met + i * criteria, (size_t)criteria * sizeof *met);
    }
    for (int i = 0; i < n; i++) text_free(&list[i]);
    free(q), free(list), free(met), free(which);
    return ok;
}

static inline bool judge_rubrics(Judge *j, const RewardInput *in, const JudgeRecord *r, int n, double *value,
                                 Error *e) {
    JudgeCriteria c;
    const bool at_once = judge_at_once(j, JUDGE_BY_RUBRIC);
    const bool ok = judge_criteria_read(&c, r, n, e) &&
                    (at_once ? judge_ask_at_once(j, in, r, n, &c, e) : judge_ask_each(j, in, r, n, &c, e));
    for (int i = 0; ok && i < n; i++) { /* a criterion without an answer makes the whole NaN */
        const bool any = c.first[i] < c.first[i + 1];
        double sum = 0, all = 0;
        for (int64_t at = c.first[i]; at < c.first[i + 1]; at++) {
            sum += c.item[at].weight * c.met[at];
            all += c.item[at].weight;
        }
        value[i] = any ? sum / all : NAN;
        j->sums.unscorable += !any;
    }
    judge_criteria_free(&c);
    return ok;
}

/* ---- pair -------------------------------------------------------------------------------------------------------- */

/* The pairs of a group of G completions: edge (a, b) of indices; b -1: the record's answer. */
typedef struct JudgeEdges {
    int (*edge)[2];
    int64_t count;
} JudgeEdges;

static inline void judge_add_edge(JudgeEdges *x, int a, int b) {
    x->edge = (int(*)[2])xrealloc(x->edge, (size_t)x->count + 1, sizeof *x->edge);
    x->edge[x->count][0] = a;
    x->edge[x->count++][1] = b;
}

/* Adds the pairs of completions first ... first+G-1. With a number N of opponents, completions in random order are placed on
 * a circle, and each meets those up to N / 2 places away; with an odd N also the one opposite, so that with N and G odd one
 * of them meets one more. */
static inline void judge_group_edges(const Judge *j, uint64_t key, int first, int G, JudgeEdges *x) {
    const int64_t N = j->opponents;
    const bool all = N == 0 || N >= G - 1;
    int64_t *order = (int64_t *)xcalloc((size_t)G, sizeof *order);
    for (int i = 0; i < G; i++) order[i] = i;
    for (int i = 0; N < 0 && i < G; i++) judge_add_edge(x, first + i, -1);
    for (int i = 0; all && i < G; i++)
        for (int k = i + 1; k < G; k++) judge_add_edge(x, first + i, first + k);
    if (!all && N > 0) {
        Random random = random_start(j->seed, RANDOM_JUDGE + (3ull << 54) + key);
        random_shuffle(&random, order, G);
        for (int d = 1; d <= N / 2; d++)
            for (int i = 0; i < G; i++) judge_add_edge(x, first + (int)order[i], first + (int)order[(i + d) % G]);
        for (int i = 0; N % 2 && i < (G + 1) / 2; i++)
            judge_add_edge(x, first + (int)order[i], first + (int)order[(i + G / 2) % G]);
    }
    free(order);
}

/* The end of the group that begins with completion `first`. */
static inline int judge_group_end(const RewardInput *in, int first, int n) {
    int end = first + 1;
    while (end < n && in[end].group == in[first].group) end++;
    return end;
}

static inline bool judge_tournament(Judge *j, const RewardInput *in, const JudgeRecord *r, int n, double *value,
                                    Error *e) {
    JudgeEdges x = {0};
    for (int first = 0, end; first < n; first = end) {
        end = judge_group_end(in, first, n);
        judge_group_edges(j, in[first].id, first, end - first, &x);
    }
    JudgePair *pair = (JudgePair *)xcalloc((size_t)x.count + 1, sizeof *pair);
    double *p = (double *)xcalloc((size_t)x.count + 1, sizeof *p);
    int *met = (int *)xcalloc((size_t)n + 1, sizeof *met);
    int64_t count = 0;
    for (int64_t i = 0; i < x.count; i++) {
        const int a = x.edge[i][0], b = x.edge[i][1];
        if (b < 0 && (!in[a].answer || !*in[a].answer)) continue;
        memcpy(x.edge[count], x.edge[i], sizeof *x.edge);
        pair[count++] = (JudgePair){.prompt = r[a].prompt,
                                    .answer = judge_slice(in[a].answer),
                                    .a = judge_said(&in[a]),
                                    .b = b < 0 ? judge_slice(in[a].answer) : judge_said(&in[b]),
                                    .key = in[a].id};
    }
    const bool ok = judge_pairs(j, pair, count, p, NULL, e);
    for (int i = 0; i < n; i++) value[i] = 0;
    for (int64_t i = 0; ok && i < count; i++) {
        const int a = x.edge[i][0], b = x.edge[i][1];
        if (isnan(p[i])) continue;
        value[a] += p[i];
        met[a]++;
        if (b < 0) continue;
        value[b] += 1 - p[i];
        met[b]++;
    }
    for (int i = 0; i < n; i++) {
        j->sums.unscorable += !met[i];
        value[i] = met[i] ? value[i] / met[i] : NAN;
    }
    free(x.edge), free(pair), free(p), free(met);
    return ok;
}

/* ---- group ------------------------------------------------------------------------------------------------------- */

/* Scores completions first ... end-1, which are listed together in random order. */
static inline bool judge_group(Judge *j, const RewardInput *in, const JudgeRecord *r, int first, int end, double *value,
                               Error *e) {
    const int G = end - first;
    int64_t *order = (int64_t *)xcalloc((size_t)G, sizeof *order);
    JudgeQuestion *q = (JudgeQuestion *)xcalloc((size_t)G, sizeof *q);
    char(*number)[16] = (char(*)[16])xcalloc((size_t)G, sizeof *number);
    double *p = (double *)xcalloc((size_t)G, sizeof *p);
    TextBuffer list = {0};
    Random random = random_start(j->seed, RANDOM_JUDGE + (3ull << 54) + in[first].id);
    text_clear(&list);
    for (int i = 0; i < G; i++) order[i] = i;
    random_shuffle(&random, order, G);
    for (int i = 0; i < G; i++) {
        const TextSlice said = judge_said(&in[first + order[i]]);
        text_format(&list, "Reply %d:\n", i + 1);
        text_append(&list, said.text, said.length);
        text_string(&list, "\n\n");
        snprintf(number[i], sizeof number[i], "%d", i + 1);
    }
    for (int i = 0; i < G; i++) {
        q[i] = judge_question(j, &in[first], &r[first]);
        q[i].field[JUDGE_COMPLETIONS] = (TextSlice){list.text, list.length};
        q[i].field[JUDGE_NUMBER] = judge_slice(number[i]);
    }
    const bool ok = judge_ask(j, JUDGE_BY_GROUP, q, G, true, p, e);
    for (int i = 0; i < G; i++) value[first + order[i]] = p[i];
    text_free(&list);
    free(order), free(q), free(number), free(p);
    return ok;
}

/* ---- the reward part --------------------------------------------------------------------------------------------- */

/* Judges n completions by a mode other than group. */
static inline bool judge_each(Judge *j, JudgeMode m, const RewardInput *in, const JudgeRecord *r, int n, double *value,
                              Error *e) {
    if (m == JUDGE_BY_SCORE) return judge_scores(j, in, r, n, value, e);
    if (m == JUDGE_BY_PAIR) return judge_tournament(j, in, r, n, value, e);
    return judge_rubrics(j, in, r, n, value, e);
}

/* Measures what sentences after completions gain in the modes score and rubric. value: (n) without them. */
static inline bool judge_inject_completions(Judge *j, JudgeMode m, const RewardInput *in, const JudgeRecord *r, int n,
                                            const double *value, Error *e) {
    RewardInput *changed = (RewardInput *)xcalloc((size_t)n + 1, sizeof *changed);
    JudgeRecord *record = (JudgeRecord *)xcalloc((size_t)n + 1, sizeof *record);
    TextBuffer(*text)[2] = (TextBuffer(*)[2])xcalloc((size_t)n + 1, sizeof *text);
    double *with = (double *)xcalloc((size_t)n + 1, sizeof *with);
    bool ok = true;
    for (int kind = 0; ok && kind < JUDGE_INJECTIONS; kind++) {
        for (int i = 0; i < n; i++) {
            judge_inject(judge_said(&in[i]), (JudgeInjection)kind, in[i].id, &text[i][0]);
            judge_inject(r[i].messages, (JudgeInjection)kind, in[i].id, &text[i][1]);
            changed[i] = in[i];
            changed[i].completion = text[i][0].text;
            changed[i].completion_length = text[i][0].length;
            record[i] = r[i];
            record[i].messages = (TextSlice){text[i][1].text, text[i][1].length};
        }
        const JudgeSums before = j->sums;
        ok = judge_each(j, m, changed, record, n, with, e);
        judge_keep_cost(j, before);
        if (ok) judge_add_gain(j, (JudgeInjection)kind, value, with, n);
    }
    for (int i = 0; i < n; i++) text_free(&text[i][0]), text_free(&text[i][1]);
    free(changed), free(record), free(text), free(with);
    return ok;
}

/* Judges n completions by a mode. scores[i * stride], NaN: not judged. */
static inline bool judge_completions(Judge *j, JudgeMode m, const RewardInput *in, int n, float *scores, int stride,
                                     Error *e) {
    JudgeRecord *r = (JudgeRecord *)xcalloc((size_t)n + 1, sizeof *r);
    double *value = (double *)xcalloc((size_t)n + 1, sizeof *value);
    bool ok = true;
    for (int i = 0; i < n; i++) r[i] = judge_record(&in[i]);
    for (int first = 0, end; ok && m == JUDGE_BY_GROUP && first < n; first = end) {
        end = judge_group_end(in, first, n);
        ok = judge_group(j, in, r, first, end, value, e);
    }
    if (m != JUDGE_BY_GROUP) ok = judge_each(j, m, in, r, n, value, e);
    if (ok && j->o->injection && (m == JUDGE_BY_SCORE || m == JUDGE_BY_RUBRIC))
        ok = judge_inject_completions(j, m, in, r, n, value, e);
    for (int i = 0; i < n; i++) {
        if (ok) scores[(size_t)i * (size_t)stride] = (float)value[i];
        judge_record_free(&r[i]);
    }
    free(r), free(value);
    return ok;
}

/* The callback of rewards.h. */
static inline bool judge_score_part(void *judge, int mode, const RewardInput *in, int n, float *scores, int stride,
                                    Error *e) {
    return judge_completions((Judge *)judge, (JudgeMode)mode, in, n, scores, stride, e);
}

/* Lets the judge score the parts `judge=...` of the rewards. */
static inline bool judge_attach(Judge *j, Rewards *r, Error *e) {
    for (int k = 0; k < r->count; k++)
        if (r->part[k].kind == REWARD_JUDGE && !judge_use(j, (JudgeMode)r->part[k].value[0], e)) return false;
    r->score_judge = judge_score_part;
    r->judge = j;
    return true;
}

/* Opens the judge of the options for the parts `judge=...` of the rewards, if there are any. Fails if they need one that is not
 * given. table: the program's options, of which those without effect are rejected. */
static inline bool judge_open_rewards(Judge *j, const JudgeOptions *o, Rewards *r, const Option *table,
                                      const Backend *b, Device *d, uint64_t seed, Error *e) {
    const unsigned modes = rewards_judge_modes(r);
    if (modes && !judge_given(o))
        return error_set(e, "--reward judge: give the judge, as --judge FILE or --judge-url URL");
    judge_refuse_unused(o, table, modes, "used only with --reward judge=...");
    return !modes || (judge_open(j, o, b, d, seed, e) && judge_attach(j, r, e));
}

/* ---- cost and metrics -------------------------------------------------------------------------------------------- */

/* The questions about a group of G completions; 0 if it depends on the records (rubric, but with --rubric-at-once). */
static inline int64_t judge_cost(const Judge *j, JudgeMode m, int64_t G) {
    const int64_t times = j->o->injection && m != JUDGE_BY_GROUP ? 1 + JUDGE_INJECTIONS : 1;
    if (m == JUDGE_BY_RUBRIC) return judge_at_once(j, m) ? times * G : 0;
    if (m != JUDGE_BY_PAIR) return times * G;
    if (j->opponents < 0) return times * 2 * G;
    const int64_t N = j->opponents && j->opponents < G - 1 ? j->opponents : G - 1;
    return times * (G * N + (N % 2 && G % 2));
}

/* A figure of the sums. */
typedef struct JudgeFigure {
    const char *name;
    double value;
} JudgeFigure;

enum { JUDGE_FIGURES = 11 };

/* Sets the figures of the sums that are defined, and returns their number. */
static inline int judge_figures(const JudgeSums *s, JudgeFigure f[JUDGE_FIGURES]) {
    int n = 0;
    f[n++] = (JudgeFigure){"questions", s->questions};
    if (s->pairs > 0) f[n++] = (JudgeFigure){"position_bias", s->bias / s->pairs};
    if (s->pairs > 0) f[n++] = (JudgeFigure){"consistency", s->consistent / s->pairs};
    if (s->answered > 0) f[n++] = (JudgeFigure){"label_mass", s->mass / s->answered};
    f[n++] = (JudgeFigure){"too_long", s->too_long};
    f[n++] = (JudgeFigure){"unreadable", s->unreadable};
    f[n++] = (JudgeFigure){"unscorable", s->unscorable};
    if (s->cached > 0) f[n++] = (JudgeFigure){"cached", s->cached};
    if (s->retries > 0) f[n++] = (JudgeFigure){"retries", s->retries};
    const double *injected = s->injected;
    if (injected[JUDGE_INJECTED] > 0)
        f[n++] = (JudgeFigure){"injection_gain", s->gain[JUDGE_INJECTED] / injected[JUDGE_INJECTED]};
    if (injected[JUDGE_NEUTRAL] > 0)
        f[n++] = (JudgeFigure){"neutral_gain", s->gain[JUDGE_NEUTRAL] / injected[JUDGE_NEUTRAL]};
    return n;
}

/* Appends the figures that are not 0: "32 questions, label_mass 0.98, consistency 0.91". */
static inline void judge_figures_text(const JudgeSums *s, TextBuffer *out) {
    JudgeFigure f[JUDGE_FIGURES];
    const int n = judge_figures(s, f);
    text_format(out, "%.0f questions", s->questions);
    for (int i = 1; i < n; i++)
        if (f[i].value != 0) text_format(out, ", %s %.4g", f[i].name, f[i].value);
}

/* The figures as a JSON object. The caller owns it. */
static inline json_t *judge_figures_json(const JudgeSums *s) {
    json_t *object = json_object();
    JudgeFigure f[JUDGE_FIGURES];
    const int n = judge_figures(s, f);
    for (int i = 0; i < n; i++) json_object_set_new(object, f[i].name, json_real(f[i].value));
    return object;
}

#endif
