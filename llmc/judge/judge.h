/* judge.h - a judge: opens a language model, asks it questions, and turns its answers into numbers.
 *
 *   score    rate a completion from 1 to N             the expected value over the answer's distribution, as 0 to 1
 *   rubric   does a completion meet a criterion?       P(yes); with --rubric-at-once of each criterion in one question
 *   pair     which of two completions is better?       P(the first), asked in both orders and averaged
 *   group    rate a completion among all of its prompt as score
 *
 * judged.h makes rewards of these. Sums over the questions (JudgeSums) say how the judge does: its mean position bias, how
 * often its answer is the same in both orders, the probability of its labels, and what it could not answer.
 *
 *     Judge j;
 *     JudgeOptions o = judge_defaults();
 *     JudgeQuestion q[8] = {0};
 *     double value[8];
 *     const Backend *backend;
 *     Device *device;
 *     o.file = "judge.bin";
 *     if (!judge_open(&j, &o, backend, device, 42, &e) || !judge_use(&j, JUDGE_BY_SCORE, &e)) return false;
 *     if (!judge_ask(&j, JUDGE_BY_SCORE, q, 8, false, value, &e)) return false;                // NaN: no answer
 *     judge_close(&j);
 */
#ifndef LLMC_JUDGE_JUDGE_H
#define LLMC_JUDGE_JUDGE_H

#include "../base/error.h"    /* error_set, Error, xcalloc, checked_object, ... */
#include "../base/io.h"       /* XXH3_64bits, file_slurp */
#include "../base/options.h"  /* Option, option_store_int */
#include "../base/random.h"   /* RANDOM_JUDGE, Random, random_below, random_start */
#include "../base/text.h"     /* TextSlice, text_string, TextBuffer, text_clear, ... */
#include "../model/backend.h" /* Backend, Device */
#include "http.h"             /* JudgeCall, JudgeHttp, JudgeHttpOptions, judge_call_free, ... */
#include "injection.h"        /* judge_inject, JUDGE_INJECTIONS, JudgeInjection */
#include "judge_options.h"    /* JudgeMode, JudgeOptions, JUDGE_BY_PAIR, JUDGE_MODES, ... */
#include "labels.h"           /* judge_value, JudgeSums, judge_both_orders, judge_normalise */
#include "local.h"            /* JudgePrompt, JUDGE_LABELS_MAX, JudgeLabels, JudgeLocal, ... */
#include "question.h"         /* JudgeQuestion, JUDGE_PRINCIPLE, judge_template_has, JUDGE_ANSWER, ... */
#include "reply.h"            /* JUDGE_PATTERN, JudgePattern, JudgeReply, judge_pattern_free, ... */

enum {
    JUDGE_ROWS = 4096,                        /* tokens that a local judge reads at once */
    JUDGE_CRITERIA_MAX = JUDGE_LABELS_MAX / 2 /* of a rubric, with --rubric-at-once */
};

/* What a mode needs: its question and the labels of its answer. */
typedef struct JudgeForm {
    bool used;
    JudgeTemplate template;
    char *word[2];                 /* the two answers; NULL for a score */
    char *label[JUDGE_LABELS_MAX]; /* (count) */
    int count;
    JudgeLabels tokens;   /* of a local judge */
    JudgePattern pattern; /* of a server's replies without --judge-logprobs */
} JudgeForm;

typedef struct Judge {
    const JudgeOptions *o; /* the command line */
    bool open;
    JudgeLocal local; /* --judge */
    JudgeHttp http;   /* --judge-url */
    struct {
        double asked, unreadable;
        char *shown[3]; /* replies without an answer */
    } replies;
    JudgeForm form[JUDGE_MODES];
    char *principles; /* text of the file; its lines end with NULs */
    const char **principle;
    int64_t principle_count;
    uint64_t hash;     /* of the files of the options but the model */
    int64_t opponents; /* of each completion; 0: all; -1: the record's answer */
    uint64_t seed;
    char scale[24]; /* its highest score as text */
    JudgeSums sums;
    bool warned_mass, warned_long; /* of labels that it hardly ever gives, of questions that do not fit */
} Judge;

static inline bool judge_is_score(JudgeMode m) { return m == JUDGE_BY_SCORE || m == JUDGE_BY_GROUP; }

static inline const char *judge_mode_name(JudgeMode m) {
    static const char *const names[] = {"score", "rubric", "pair", "group"};
    return names[m];
}

static inline void judge_close(Judge *j) {
    for (int m = 0; m < JUDGE_MODES; m++) {
        JudgeForm *f = &j->form[m];
        if (f->used) judge_template_free(&f->template);
        free(f->word[0]), free(f->word[1]);
        for (int i = 0; i < f->count; i++) free(f->label[i]);
        judge_labels_free(&f->tokens);
        judge_pattern_free(&f->pattern);
    }
    judge_local_close(&j->local);
    judge_http_close(&j->http);
    for (int i = 0; i < 3; i++) free(j->replies.shown[i]);
    free(j->principles), free(j->principle);
    *j = (Judge){0};
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

/* Reads a text file of the options; NULL with *e set if it is not UTF-8. option: that names it. */
static inline char *judge_read(Judge *j, const char *option, const char *path, Error *e) {
    size_t n;
    char *text = file_slurp(path, JUDGE_TEMPLATE_MAX, &n, e);
    if (!text) return NULL;
    j->hash ^= XXH3_64bits(text, n) + strlen(option);
    while (n && text[n - 1] == '\n') text[--n] = 0;
    if (strlen(text) == n && utf8_valid(text, n) == n) return text;
    free(text);
    error_set(e, "--%s %s: must be a text in UTF-8 without NUL characters", option, path);
    return NULL;
}

/* Reads the lines of --judge-principles. */
static inline bool judge_read_principles(Judge *j, Error *e) {
    j->principles = judge_read(j, "judge-principles", j->o->principles, e);
    if (!j->principles) return false;
    for (char *line = strtok(j->principles, "\n"); line; line = strtok(NULL, "\n")) {
        j->principle = (const char **)xrealloc(j->principle, (size_t)j->principle_count + 1, sizeof *j->principle);
        j->principle[j->principle_count++] = line;
    }
    return j->principle_count || error_set(e, "--judge-principles %s: has no line", j->o->principles);
}

/* Reads --judge-opponents. */
static inline bool judge_read_opponents(Judge *j, Error *e) {
    const char *text = j->o->opponents;
    const Option number = {.value = &j->opponents, .low = 1, .high = 4096};
    if (!strcmp(text, "all")) return true;
    j->opponents = -1;
    if (!strcmp(text, "answer")) return true;
    return option_store_int(&number, text, NULL) ||
           error_set(e, "--judge-opponents %.40s: must be all, answer, or a number from 1 to 4096", text);
}

/* Checks the texts of the options that a question or a request has. */
static inline bool judge_check_texts(const JudgeOptions *o, Error *e) {
    const struct {
        const char *option, *text;
    } all[] = {{"judge-labels", o->labels}, {"judge-cot-end", o->cot_end}, {"judge-model", o->model}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const size_t n = all[i].text ? strlen(all[i].text) : 0;
        if (n && utf8_valid(all[i].text, n) < n) return error_set(e, "--%s: must be a text in UTF-8", all[i].option);
    }
    return true;
}

/* Opens the server of --judge-url. */
static inline bool judge_open_http(Judge *j, Error *e) {
    const JudgeOptions *o = j->o;
    const JudgeHttpOptions http = {.url = o->url,
                                   .key_env = o->key_env,
                                   .cache = o->cache,
                                   .parallel = o->parallel,
                                   .retries = o->retries,
                                   .timeout = o->timeout,
                                   .insecure = o->insecure,
                                   .seed = j->seed};
    if (!o->model) return error_set(e, "--judge-url: give the name of the model as --judge-model");
    return judge_http_open(&j->http, &http, e);
}

/* Opens the judge of the options. Fails if the model cannot be opened, or on a bad option. */
static inline bool judge_open(Judge *j, const JudgeOptions *o, const Backend *b, Device *d, uint64_t seed, Error *e) {
    *j = (Judge){.o = o, .seed = seed};
    snprintf(j->scale, sizeof j->scale, "%lld", (long long)o->scale);
    if (o->cot && !*o->cot_end) return error_set(e, "--judge-cot-end: the text is empty");
    bool ok = judge_check_texts(o, e) && judge_read_opponents(j, e) && (!o->principles || judge_read_principles(j, e));
    if (ok && o->file && o->url) ok = error_set(e, "--judge and --judge-url: give only one of them");
    ok = ok && (o->url ? judge_open_http(j, e) : judge_local_open(&j->local, o->file, b, d, JUDGE_ROWS, e));
    if (ok) j->open = true;
    else judge_close(j);
    return ok;
}

/* ---- the form of a mode ------------------------------------------------------------------------------------------ */

/* Whether a template of this mode may have the field. */
static inline bool judge_mode_has(JudgeMode m, JudgeField field) {
    switch (field) {
    case JUDGE_PROMPT:
    case JUDGE_ANSWER:
    case JUDGE_PRINCIPLE: return true;
    case JUDGE_COMPLETION:
    case JUDGE_MESSAGES: return m == JUDGE_BY_SCORE || m == JUDGE_BY_RUBRIC;
    case JUDGE_COMPLETION_A:
    case JUDGE_COMPLETION_B: return m == JUDGE_BY_PAIR;
    case JUDGE_COMPLETIONS:
    case JUDGE_NUMBER: return m == JUDGE_BY_GROUP;
    case JUDGE_RUBRIC: return m == JUDGE_BY_RUBRIC;
    default: return judge_is_score(m);
    }
}

/* Checks that the template has the fields of its mode, and no others. name: of its file. */
static inline bool judge_check_fields(const Judge *j, JudgeMode m, const char *name, Error *e) {
    const JudgeTemplate *t = &j->form[m].template;
    const bool whole = judge_template_has(t, JUDGE_COMPLETION) || judge_template_has(t, JUDGE_MESSAGES);
    for (int f = 0; f < JUDGE_FIELDS; f++) {
        const bool has = judge_template_has(t, (JudgeField)f), may = judge_mode_has(m, (JudgeField)f);
        const bool optional = f == JUDGE_PROMPT || f == JUDGE_ANSWER || f == JUDGE_PRINCIPLE || f == JUDGE_SCALE ||
                              ((f == JUDGE_COMPLETION || f == JUDGE_MESSAGES) && whole);
        if (has && !may)
            return error_set(e, "%s: a question of judge=%s has no {%s}", name, judge_mode_name(m),
                             judge_field_name[f]);
        if (!has && may && !optional)
            return error_set(e, "%s: the question of judge=%s must have {%s}", name, judge_mode_name(m),
                             judge_field_name[f]);
    }
    const bool principle = judge_template_has(t, JUDGE_PRINCIPLE);
    if (principle && !j->o->principles)
        return error_set(e, "%s: give the lines of {principle} by --judge-principles", name);
    return principle || !j->o->principles || error_set(e, "--judge-principles: %s has no {principle}", name);
}

/* Adds a label; a blank precedes it after a rationale. */
static inline void judge_add_label(const Judge *j, JudgeForm *f, const char *text, size_t n) {
    const char *end = j->o->cot_end, last = *end ? end[strlen(end) - 1] : ' ';
    TextBuffer label = {0};
    text_clear(&label);
    if (j->o->cot && !j->o->url && last != ' ' && last != '\n') text_string(&label, " ");
    text_append(&label, text, n);
    f->label[f->count++] = label.text;
}

/* Whether one question is about all criteria of a rubric. */
static inline bool judge_at_once(const Judge *j, JudgeMode m) { return m == JUDGE_BY_RUBRIC && j->o->rubric_at_once; }

/* Makes the labels of a mode. With --rubric-at-once those of a local judge begin with the number of a criterion. */
static inline bool judge_make_labels(Judge *j, JudgeMode m, Error *e) {
    JudgeForm *f = &j->form[m];
    char number[24];
    if (judge_is_score(m)) {
        if (j->o->labels) return error_set(e, "--judge-labels: judge=%s has the labels 1 to N", judge_mode_name(m));
        for (int64_t i = 1; i <= j->o->scale; i++)
            judge_add_label(j, f, number, (size_t)snprintf(number, sizeof number, "%lld", (long long)i));
        return true;
    }
    const char *text = j->o->labels ? j->o->labels : m == JUDGE_BY_PAIR ? "1,2" : "yes,no", *comma = strchr(text, ',');
    if (!comma || comma == text || !comma[1] || strchr(comma + 1, ','))
        return error_set(e, "--judge-labels %.60s: must be two texts separated by a comma", text);
    f->word[0] = xstrndup(text, (size_t)(comma - text));
    f->word[1] = xstrndup(comma + 1, strlen(comma + 1));
    const int lines = judge_at_once(j, m) && !j->o->url ? JUDGE_CRITERIA_MAX : 0;
    TextBuffer line = {0};
    for (int i = 0; i < 2 * lines; i++) {
        text_clear(&line);
        text_format(&line, "%d: %s", i / 2 + 1, f->word[i % 2]);
        judge_add_label(j, f, line.text, line.length);
    }
    for (int i = 0; !lines && i < 2; i++) judge_add_label(j, f, f->word[i], strlen(f->word[i]));
    text_free(&line);
    return true;
}

/* Compiles the pattern of a mode. */
static inline bool judge_use_pattern(Judge *j, JudgeMode m, Error *e) {
    const bool at_once = judge_at_once(j, m);
    const char *given = j->o->pattern, *usual = at_once ? JUDGE_LINES_PATTERN : JUDGE_PATTERN;
    for (int k = 0; k < JUDGE_MODES && given; k++)
        if (j->form[k].used && judge_at_once(j, (JudgeMode)k) != at_once)
            return error_set(e, "--judge-pattern: with --rubric-at-once its groups are others than for judge=%s",
                             judge_mode_name(at_once ? (JudgeMode)k : m));
    return judge_pattern_open(&j->form[m].pattern, given ? given : usual, at_once, e);
}

/* Checks labels that a server writes: distinct, and for their probabilities no label the beginning of another. */
static inline bool judge_check_labels(const Judge *j, const JudgeForm *f, Error *e) {
    for (int i = 0; i < f->count; i++)
        for (int k = 0; k < f->count; k++) {
            const char *a = f->label[k], *b = f->label[i];
            if (i != k && !strcasecmp(a, b))
                return error_set(e, "labels %d and %d of the judge are both '%s': it could not tell them apart", i + 1,
                                 k + 1, a);
            if (i != k && j->o->logprobs && !strncmp(a, b, strlen(a)))
                return error_set(e,
                                 "--judge-logprobs: a server shows first tokens only, and the labels '%s' and '%s' may "
                                 "begin with the same one%s",
                                 a, b, f->count > 9 ? "; give --judge-scale 9 or less" : "");
        }
    return true;
}

/* Appends the built-in question of a mode. */
static inline void judge_built_in(const Judge *j, JudgeMode m, TextBuffer *out) {
    const JudgeOptions *o = j->o;
    const bool by_pattern = o->url && !o->logprobs, reasons = o->cot > 0, at_once = judge_at_once(j, m);
    const char *const *word = (const char *const *)j->form[m].word, *end = o->cot ? o->cot_end : NULL;
    text_string(out, judge_template_text(m, at_once));
    if (at_once) judge_template_ask_rubric(reasons, by_pattern ? NULL : end, o->url != NULL, word[0], word[1], out);
    else judge_template_ask(m, reasons, by_pattern ? "Score:" : end, word[0], word[1], out);
}

/* Prepares a mode: its question and its labels. Fails on a template that lacks its fields, and on labels that are empty or
 * equal. */
static inline bool judge_use(Judge *j, JudgeMode m, Error *e) {
    JudgeForm *f = &j->form[m];
    const JudgeOptions *o = j->o;
    TextBuffer text = {0};
    if (f->used) return true;
    for (int k = 0; k < JUDGE_MODES; k++)
        if (o->template && j->form[k].used)
            return error_set(e, "--judge-template: is the question of one mode, not of judge=%s and judge=%s",
                             judge_mode_name((JudgeMode)k), judge_mode_name(m));
    if (!judge_make_labels(j, m, e) || (o->url && !o->logprobs && !judge_use_pattern(j, m, e))) return false;
    char *own = NULL;
    if (o->template) {
        own = judge_read(j, "judge-template", o->template, e);
        if (own) text_string(&text, own);
        free(own);
        if (!own) return false;
    } else judge_built_in(j, m, &text);
    const char *name = o->template ? o->template : "the built-in question";
    f->used = judge_template_parse(&f->template, text.text, name, e);
    text_free(&text);
    if (f->used && o->url && f->template.begins)
        return error_set(e, "%s: has {assistant}, but a server begins its answers itself", name);
    if (!f->used || !judge_check_fields(j, m, name, e)) return false;
    if (o->url) return judge_check_labels(j, f, e);
    return judge_labels_encode(&f->tokens, &j->local.text, (const char *const *)f->label, f->count, e);
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

/* The line of --judge-principles for the question with this key; "" if there are none. */
static inline TextSlice judge_principle(const Judge *j, uint64_t key) {
    if (!j->principle_count) return (TextSlice){"", 0};
    Random r = random_start(j->seed, RANDOM_JUDGE + (1ull << 55) + key);
    const char *line = j->principle[random_below(&r, (uint64_t)j->principle_count)];
    return (TextSlice){line, strlen(line)};
}

/* Sets the number of first tokens that all n questions share. */
static inline void judge_share_prefix(JudgePrompt *q, int64_t n) {
    int32_t shared = n ? q[0].ids.count : 0;
    for (int64_t i = 1; i < n; i++) {
        int32_t k = 0;
        while (k < shared && k < q[i].ids.count && q[i].ids.ids[k] == q[0].ids.ids[k]) k++;
        shared = k;
    }
    for (int64_t i = 0; i < n; i++) q[i].shared = n > 1 && shared > 0 ? shared : -1;
}

/* Questions of a mode. together: they share their first tokens. criteria: verdicts of each question with --rubric-at-once; 0: a
 * question has one value. */
typedef struct JudgeAsked {
    JudgeMode mode;
    const JudgeQuestion *q;
    int64_t n;
    bool together;
    int criteria;
} JudgeAsked;

/* Values of a question. */
static inline int judge_verdicts(const JudgeAsked *a) { return a->criteria ? a->criteria : 1; }

/* Sets value: (n, verdicts) of the label log-probabilities l: (n, samples, verdicts, labels). NaN if a question has no
 * answer. */
static inline void judge_values(Judge *j, const JudgeAsked *a, const double *l, int labels, int samples,
                                double *value) {
    const int verdicts = judge_verdicts(a);
    double p[JUDGE_LABELS_MAX];
    for (int64_t i = 0; i < a->n; i++, value += verdicts) {
        double mass = 0;
        for (int v = 0; v < verdicts; v++) value[v] = 0;
        for (int k = 0; k < samples; k++)
            for (int v = 0; v < verdicts; v++, l += labels) {
                mass += judge_normalise(l, labels, p) / samples;
                value[v] += judge_value(p, labels, judge_is_score(a->mode)) / samples;
            }
        j->sums.questions++;
        if (isnan(value[0])) j->sums.too_long++;
        else {
            j->sums.answered++;
            j->sums.mass += mass;
        }
    }
}

/* Asks a local judge. value: (n, verdicts) */
static inline bool judge_ask_local(Judge *j, const JudgeAsked *a, double *value, Error *e) {
    const JudgeForm *f = &j->form[a->mode];
    const JudgeQuestion *q = a->q;
    const int64_t n = a->n;
    const int samples = j->o->cot ? (int)j->o->samples : 1;
    const JudgeLabels labels = judge_labels_first(&f->tokens, a->criteria ? 2 * a->criteria : f->count);
    JudgePrompt *prompt = (JudgePrompt *)xcalloc((size_t)n + 1, sizeof *prompt), *full = prompt;
    double *l = (double *)xcalloc((size_t)(n * samples * labels.count) + 1, sizeof *l);
    bool ok = true;
    for (int64_t i = 0; ok && i < n; i++) {
        prompt[i].shared = -1;
        ok = judge_template_encode(&f->template, &j->local.text, &q[i], &prompt[i].ids, e);
    }
    if (ok && a->together && !j->o->cot) judge_share_prefix(prompt, n);
    if (j->o->cot) {
        const JudgeRationales how = {samples, (int)j->o->cot, j->o->temperature, j->o->cot_end, j->seed};
        full = (JudgePrompt *)xcalloc((size_t)(n * samples) + 1, sizeof *full);
        ok = ok && judge_local_rationales(&j->local, prompt, n, &how, &labels, full, e);
    }
    ok = ok && judge_local_ask(&j->local, full, n * samples, &labels, l, e);
    if (ok) judge_values(j, a, l, a->criteria ? 2 : f->count, samples, value);
    for (int64_t i = 0; full != prompt && i < n * samples; i++) token_list_free(&full[i].ids);
    for (int64_t i = 0; i < n; i++) token_list_free(&prompt[i].ids);
    if (full != prompt) free(full);
    free(prompt), free(l);
    return ok;
}

/* Tokens that the labels of an answer may take: with --rubric-at-once a line per criterion, which has no more tokens than
 * bytes. */
static inline int64_t judge_answer_tokens(const Judge *j, const JudgeForm *f, int criteria) {
    const size_t yes = f->word[0] ? strlen(f->word[0]) : 0, no = f->word[1] ? strlen(f->word[1]) : 0;
    const int64_t each = j->o->logprobs && !j->o->cot ? 4 : 32;
    return each + criteria * (int64_t)(strlen("10: \n") + (yes > no ? yes : no));
}

/* The request of a question. sample: number of the rationale; -1: there is one. The caller frees it. */
static inline char *judge_request(const Judge *j, const JudgeForm *f, const JudgeQuestion *q, int criteria,
                                  int sample) {
    const JudgeOptions *o = j->o;
    json_t *body = json_object();
    json_object_set_new(body, "model", json_string(o->model));
    json_object_set_new(body, "messages", judge_template_messages(&f->template, q));
    json_object_set_new(body, "temperature", json_real(sample < 0 ? 0 : o->temperature));
    json_object_set_new(body, "max_tokens", json_integer(o->cot + judge_answer_tokens(j, f, criteria)));
    if (sample >= 0) json_object_set_new(body, "seed", json_integer(sample)); /* and another key of the cache */
    if (o->logprobs) {
        json_object_set_new(body, "logprobs", json_true());
        json_object_set_new(body, "top_logprobs", json_integer(20));
    }
    char *text = (char *)checked_object(json_dumps(body, JSON_COMPACT | JSON_SORT_KEYS), "a request");
    json_decref(body);
    return text;
}

/* Keeps the beginning of a reply without an answer, for the message that ends the run. */
static inline void judge_keep_unreadable(Judge *j, const JudgeCall *c) {
    TextBuffer text = {0};
    text_clear(&text);
    for (int i = 0; i < 3; i++) {
        if (j->replies.shown[i]) continue;
        if (c->reply) judge_http_show(&j->http, c->reply, c->length, &text);
        else text_string(&text, c->why.text);
        j->replies.shown[i] = text.text;
        return;
    }
    text_free(&text);
}

/* Fails if too many of the replies have no answer; begins to count again after a thousand. */
static inline bool judge_check_unreadable(Judge *j, Error *e) {
    const double most = j->o->max_unreadable, asked = j->replies.asked, bad = j->replies.unreadable;
    char **shown = j->replies.shown;
    if (bad > most * fmax(asked, 20))
        return error_set(
            e,
            "%.0f of %.0f replies of the judge have no answer, more than --judge-max-unreadable %g allows: "
            "%.240s%s%.240s%s%.240s",
            bad, asked, most, shown[0], shown[1] ? " | " : "", shown[1] ? shown[1] : "", shown[2] ? " | " : "",
            shown[2] ? shown[2] : "");
    if (asked < 1000) return true;
    for (int i = 0; i < 3; i++) free(shown[i]);
    memset(&j->replies, 0, sizeof j->replies);
    return true;
}

/* Sets value: (verdicts) of a server's reply, and *mass of its labels, NaN if that is unknown. False if it has no value. */
static inline bool judge_call_value(Judge *j, const JudgeAsked *a, const JudgeCall *c, double *value, double *mass) {
    const JudgeForm *f = &j->form[a->mode];
    const char *const *label = (const char *const *)f->label, *end = j->o->cot ? j->o->cot_end : NULL;
    const bool score = judge_is_score(a->mode), by_pattern = !j->o->logprobs;
    double p[JUDGE_LABELS_MAX];
    bool ok;
    JudgeReply r;
    *mass = NAN;
    if (!c->reply || !judge_reply_parse(&r, c->reply, c->length, NULL)) return false;
    if (a->criteria && by_pattern) ok = judge_reply_match_lines(&r, &f->pattern, label, a->criteria, value);
    else if (a->criteria) ok = judge_reply_label_lines(&r, label, a->criteria, end, value, mass);
    else if (by_pattern) ok = !isnan(*value = judge_reply_match(&r, &f->pattern, label, f->count, score));
    else {
        ok = judge_reply_labels(&r, label, f->count, end, p, mass);
        if (ok) *value = judge_value(p, f->count, score);
    }
    judge_reply_free(&r);
    return ok;
}

/* Asks a server. value: (n, verdicts); that of a question is the mean over its rationales that have one. */
static inline bool judge_ask_http(Judge *j, const JudgeAsked *a, double *value, Error *e) {
    const JudgeForm *f = &j->form[a->mode];
    const int64_t n = a->n;
    const int samples = j->o->cot ? (int)j->o->samples : 1, verdicts = judge_verdicts(a);
    JudgeCall *call = (JudgeCall *)xcalloc((size_t)(n * samples) + 1, sizeof *call);
    const double cached = j->http.cached, retries = j->http.retries;
    for (int64_t i = 0; i < n * samples; i++)
        call[i].request = judge_request(j, f, &a->q[i / samples], a->criteria, samples > 1 ? (int)(i % samples) : -1);
    bool ok = judge_http_run(&j->http, call, n * samples, e);
    j->sums.cached += j->http.cached - cached;
    j->sums.retries += j->http.retries - retries;
    for (int64_t i = 0; ok && i < n; i++, value += verdicts) {
        double one[JUDGE_CRITERIA_MAX], sum[JUDGE_CRITERIA_MAX] = {0};
        int answers = 0;
        for (int k = 0; k < samples; k++) {
            double mass;
            const JudgeCall *c = &call[i * samples + k];
            const bool answered = judge_call_value(j, a, c, one, &mass);
            j->replies.asked++;
            if (!answered) {
                j->replies.unreadable++;
                j->sums.unreadable++;
                judge_keep_unreadable(j, c);
                continue;
            }
            for (int v = 0; v < verdicts; v++) sum[v] += one[v];
            answers++;
            if (isnan(mass)) continue;
            j->sums.mass += mass;
            j->sums.answered++;
        }
        j->sums.questions++;
        for (int v = 0; v < verdicts; v++) value[v] = answers ? sum[v] / answers : NAN;
    }
    for (int64_t i = 0; i < n * samples; i++) {
        free((char *)call[i].request);
        judge_call_free(&call[i]);
    }
    free(call);
    return ok && judge_check_unreadable(j, e);
}

/* Asks n questions of a mode. value: (n), NaN if a question has no answer. together: they are about one prompt, and differ
 * only at their ends. */
static inline bool judge_ask(Judge *j, JudgeMode m, const JudgeQuestion *q, int64_t n, bool together, double *value,
                             Error *e) {
    const JudgeAsked a = {.mode = m, .q = q, .n = n, .together = together};
    return j->o->url ? judge_ask_http(j, &a, value, e) : judge_ask_local(j, &a, value, e);
}

/* Asks n questions, each about all of its `criteria` criteria. value: (n, criteria), NaN if a question has no answer. */
static inline bool judge_ask_criteria(Judge *j, const JudgeQuestion *q, int64_t n, int criteria, double *value,
                                      Error *e) {
    const JudgeAsked a = {.mode = JUDGE_BY_RUBRIC, .q = q, .n = n, .criteria = criteria};
    return j->o->url ? judge_ask_http(j, &a, value, e) : judge_ask_local(j, &a, value, e);
}

/* Two completions of a prompt. key: of the question, for its principle. */
typedef struct JudgePair {
    TextSlice prompt, answer, a, b;
    uint64_t key;
} JudgePair;

/* Counts what a sentence of the set gained completions. value, with: (n) without and with it. */
static inline void judge_add_gain(Judge *j, JudgeInjection kind, const double *value, const double *with, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const double gain = with[i] - value[i];
        if (isnan(gain)) continue;
        j->sums.gain[kind] += gain;
        j->sums.injected[kind]++;
    }
}

/* Asks which completion of each pair is better, in both orders. p: (n) probability that a is better, NaN without an answer.
 * orders: (n, 2) the probability of the first completion in each order; or NULL. */
static inline bool judge_ask_pairs(Judge *j, const JudgePair *pair, int64_t n, double *p, double *orders, Error *e) {
    JudgeQuestion *q = (JudgeQuestion *)xcalloc((size_t)n * 2 + 1, sizeof *q);
    double *value = (double *)xcalloc((size_t)n * 2 + 1, sizeof *value);
    for (int64_t i = 0; i < n; i++) {
        JudgeQuestion *one = &q[2 * i];
        one->field[JUDGE_PROMPT] = pair[i].prompt;
        one->field[JUDGE_ANSWER] = pair[i].answer;
        one->field[JUDGE_PRINCIPLE] = judge_principle(j, pair[i].key);
        q[2 * i + 1] = *one;
        one[0].field[JUDGE_COMPLETION_A] = one[1].field[JUDGE_COMPLETION_B] = pair[i].a;
        one[0].field[JUDGE_COMPLETION_B] = one[1].field[JUDGE_COMPLETION_A] = pair[i].b;
    }
    const bool ok = judge_ask(j, JUDGE_BY_PAIR, q, 2 * n, false, value, e);
    for (int64_t i = 0; ok && i < n; i++) p[i] = judge_both_orders(&j->sums, value[2 * i], value[2 * i + 1]);
    if (ok && orders) memcpy(orders, value, 2 * (size_t)n * sizeof *orders);
    free(q), free(value);
    return ok;
}

/* Sets the sums to those before questions about completions with sentences, of which only the cost counts. */
static inline void judge_keep_cost(Judge *j, JudgeSums before) {
    before.questions = j->sums.questions;
    before.cached = j->sums.cached;
    before.retries = j->sums.retries;
    j->sums = before;
}

/* Measures what sentences after a gain in the pairs. p: (n) without them. */
static inline bool judge_inject_pairs(Judge *j, const JudgePair *pair, int64_t n, const double *p, Error *e) {
    JudgePair *changed = (JudgePair *)xcalloc((size_t)n + 1, sizeof *changed);
    TextBuffer *text = (TextBuffer *)xcalloc((size_t)n + 1, sizeof *text);
    double *with = (double *)xcalloc((size_t)n + 1, sizeof *with);
    bool ok = true;
    for (int kind = 0; ok && kind < JUDGE_INJECTIONS; kind++) {
        for (int64_t i = 0; i < n; i++) {
            judge_inject(pair[i].a, (JudgeInjection)kind, pair[i].key, &text[i]);
            changed[i] = pair[i];
            changed[i].a = (TextSlice){text[i].text, text[i].length};
        }
        const JudgeSums before = j->sums;
        ok = judge_ask_pairs(j, changed, n, with, NULL, e);
        judge_keep_cost(j, before);
        if (ok) judge_add_gain(j, (JudgeInjection)kind, p, with, n);
    }
    for (int64_t i = 0; i < n; i++) text_free(&text[i]);
    free(changed), free(text), free(with);
    return ok;
}

/* As judge_ask_pairs(), and with --judge-injection measures what sentences after a gain. */
static inline bool judge_pairs(Judge *j, const JudgePair *pair, int64_t n, double *p, double *orders, Error *e) {
    return judge_ask_pairs(j, pair, n, p, orders, e) && (!j->o->injection || judge_inject_pairs(j, pair, n, p, e));
}

#endif
