/* judge.h - a judge: opens a language model, asks it questions, and turns its answers into numbers.
 *
 *   score    rate a completion from 1 to N             the expected value over the answer's distribution, as 0 to 1
 *   rubric   does a completion meet a criterion?       P(yes)
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
#include "judge_options.h"    /* JudgeMode, JudgeOptions, JUDGE_BY_PAIR, JUDGE_MODES, ... */
#include "labels.h"           /* judge_value, JudgeSums, judge_both_orders, judge_normalise */
#include "local.h"            /* JudgePrompt, JUDGE_LABELS_MAX, JudgeLabels, JudgeLocal, ... */
#include "question.h"         /* JudgeQuestion, JUDGE_PRINCIPLE, judge_template_has, JUDGE_ANSWER, ... */
#include "reply.h"            /* JUDGE_PATTERN, JudgePattern, JudgeReply, judge_pattern_free, ... */

enum { JUDGE_ROWS = 4096 }; /* tokens that a local judge reads at once */

/* What a mode needs: its question and the labels of its answer. */
typedef struct JudgeForm {
    bool used;
    JudgeTemplate template;
    char *label[JUDGE_LABELS_MAX]; /* (count) */
    int count;
    JudgeLabels tokens;
} JudgeForm;

typedef struct Judge {
    const JudgeOptions *o; /* the command line */
    bool open;
    JudgeLocal local; /* --judge */
    JudgeHttp http;   /* --judge-url */
    JudgePattern pattern;
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
        for (int i = 0; i < f->count; i++) free(f->label[i]);
        judge_labels_free(&f->tokens);
    }
    judge_local_close(&j->local);
    judge_http_close(&j->http);
    judge_pattern_free(&j->pattern);
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
    return (o->logprobs || judge_pattern_open(&j->pattern, o->pattern ? o->pattern : JUDGE_PATTERN, e)) &&
           judge_http_open(&j->http, &http, e);
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

/* Makes the labels of a mode. */
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
    judge_add_label(j, f, text, (size_t)(comma - text));
    judge_add_label(j, f, comma + 1, strlen(comma + 1));
    return true;
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
    if (!judge_make_labels(j, m, e)) return false;
    const int blank = f->label[0][0] == ' ';
    char *own = NULL;
    if (o->template) {
        own = judge_read(j, "judge-template", o->template, e);
        if (own) text_string(&text, own);
        free(own);
        if (!own) return false;
    } else {
        text_string(&text, judge_template_text(m));
        const char *end = o->url && !o->logprobs ? "Score:" : o->cot ? o->cot_end : NULL;
        judge_template_ask(m, o->cot > 0, end, f->label[0] + blank, f->label[1] + blank, &text);
    }
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

/* Sets value: (n) of the label log-probabilities l: (n, samples, labels). NaN if a question has no answer. */
static inline void judge_values(Judge *j, JudgeMode m, const double *l, int64_t n, int samples, double *value) {
    const int labels = j->form[m].count;
    double p[JUDGE_LABELS_MAX];
    for (int64_t i = 0; i < n; i++) {
        double sum = 0, mass = 0;
        for (int k = 0; k < samples; k++, l += labels) {
            mass += judge_normalise(l, labels, p);
            sum += judge_value(p, labels, judge_is_score(m));
        }
        value[i] = sum / samples;
        j->sums.questions++;
        if (isnan(value[i])) j->sums.too_long++;
        else {
            j->sums.answered++;
            j->sums.mass += mass / samples;
        }
    }
}

/* Asks a local judge. together: the n questions share their first tokens. */
static inline bool judge_ask_local(Judge *j, JudgeMode m, const JudgeQuestion *q, int64_t n, bool together,
                                   double *value, Error *e) {
    const JudgeForm *f = &j->form[m];
    const int samples = j->o->cot ? (int)j->o->samples : 1;
    JudgePrompt *prompt = (JudgePrompt *)xcalloc((size_t)n + 1, sizeof *prompt), *full = prompt;
    double *l = (double *)xcalloc((size_t)(n * samples * f->count) + 1, sizeof *l);
    bool ok = true;
    for (int64_t i = 0; ok && i < n; i++) {
        prompt[i].shared = -1;
        ok = judge_template_encode(&f->template, &j->local.text, &q[i], &prompt[i].ids, e);
    }
    if (ok && together && !j->o->cot) judge_share_prefix(prompt, n);
    if (j->o->cot) {
        const JudgeRationales how = {samples, (int)j->o->cot, j->o->temperature, j->o->cot_end, j->seed};
        full = (JudgePrompt *)xcalloc((size_t)(n * samples) + 1, sizeof *full);
        ok = ok && judge_local_rationales(&j->local, prompt, n, &how, &f->tokens, full, e);
    }
    ok = ok && judge_local_ask(&j->local, full, n * samples, &f->tokens, l, e);
    if (ok) judge_values(j, m, l, n, samples, value);
    for (int64_t i = 0; full != prompt && i < n * samples; i++) token_list_free(&full[i].ids);
    for (int64_t i = 0; i < n; i++) token_list_free(&prompt[i].ids);
    if (full != prompt) free(full);
    free(prompt), free(l);
    return ok;
}

/* The request of a question. sample: number of the rationale; -1: there is one. The caller frees it. */
static inline char *judge_request(const Judge *j, const JudgeForm *f, const JudgeQuestion *q, int sample) {
    const JudgeOptions *o = j->o;
    json_t *body = json_object();
    json_object_set_new(body, "model", json_string(o->model));
    json_object_set_new(body, "messages", judge_template_messages(&f->template, q));
    json_object_set_new(body, "temperature", json_real(sample < 0 ? 0 : o->temperature));
    json_object_set_new(body, "max_tokens", json_integer(o->cot + (o->logprobs && !o->cot ? 4 : 32)));
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

/* The value of a server's reply; NaN if it has none. */
static inline double judge_call_value(Judge *j, JudgeMode m, const JudgeCall *c, double *mass) {
    const JudgeForm *f = &j->form[m];
    const char *const *label = (const char *const *)f->label;
    double p[JUDGE_LABELS_MAX], value = NAN;
    JudgeReply r;
    *mass = NAN;
    if (!c->reply || !judge_reply_parse(&r, c->reply, c->length, NULL)) return NAN;
    if (!j->o->logprobs) value = judge_reply_match(&r, &j->pattern, label, f->count, judge_is_score(m));
    else if (judge_reply_labels(&r, label, f->count, j->o->cot ? j->o->cot_end : NULL, p, mass))
        value = judge_value(p, f->count, judge_is_score(m));
    judge_reply_free(&r);
    return value;
}

/* Asks a server. The value of a question is the mean over its rationales that have one. */
static inline bool judge_ask_http(Judge *j, JudgeMode m, const JudgeQuestion *q, int64_t n, double *value, Error *e) {
    const JudgeForm *f = &j->form[m];
    const int samples = j->o->cot ? (int)j->o->samples : 1;
    JudgeCall *call = (JudgeCall *)xcalloc((size_t)(n * samples) + 1, sizeof *call);
    const double cached = j->http.cached, retries = j->http.retries;
    for (int64_t i = 0; i < n * samples; i++)
        call[i].request = judge_request(j, f, &q[i / samples], samples > 1 ? (int)(i % samples) : -1);
    bool ok = judge_http_run(&j->http, call, n * samples, e);
    j->sums.cached += j->http.cached - cached;
    j->sums.retries += j->http.retries - retries;
    for (int64_t i = 0; ok && i < n; i++) {
        double sum = 0;
        int answers = 0;
        for (int k = 0; k < samples; k++) {
            double mass;
            const JudgeCall *c = &call[i * samples + k];
            const double one = judge_call_value(j, m, c, &mass);
            j->replies.asked++;
            if (isnan(one)) {
                j->replies.unreadable++;
                j->sums.unreadable++;
                judge_keep_unreadable(j, c);
                continue;
            }
            sum += one;
            answers++;
            if (isnan(mass)) continue;
            j->sums.mass += mass;
            j->sums.answered++;
        }
        j->sums.questions++;
        value[i] = answers ? sum / answers : NAN;
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
    return j->o->url ? judge_ask_http(j, m, q, n, value, e) : judge_ask_local(j, m, q, n, together, value, e);
}

/* Two completions of a prompt. key: of the question, for its principle. */
typedef struct JudgePair {
    TextSlice prompt, answer, a, b;
    uint64_t key;
} JudgePair;

/* Asks which completion of each pair is better, in both orders. p: (n) probability that a is better, NaN without an answer.
 * orders: (n, 2) the probability of the first completion in each order; or NULL. */
static inline bool judge_pairs(Judge *j, const JudgePair *pair, int64_t n, double *p, double *orders, Error *e) {
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

#endif
