/* fuzz_judge.c - libFuzzer target: arbitrary bytes as the reply of a judge's server, and as a template of a question.
 *
 * The first byte chooses. A value of a reply is NaN or between 0 and 1, and the same when the reply is read again. The labels'
 * probabilities sum to 1, and those of the criteria of a rubric are between 0 and 1. A template that is accepted is filled in
 * without a name of a field of its own being read again.
 */
#include "../llmc/base/error.h"     /* Error, xstrndup */
#include "../llmc/base/text.h"      /* TextBuffer, TextSlice, text_free */
#include "../llmc/judge/question.h" /* JUDGE_FIELDS, JUDGE_SECTIONS_MAX, JudgeQuestion, JudgeTemplate, ... */
#include "../llmc/judge/reply.h"    /* judge_reply_match, JUDGE_PATTERN, JudgePattern, JudgeReply, ... */
#include "fuzz.h"                   /* require, require_error */

static void fuzz_reply(const char *body, size_t n, bool score) {
    static const char *const words[] = {"yes", "no"}, *const numbers[] = {"1", "2", "3", "4", "5"};
    const char *const *labels = score ? numbers : words;
    const int count = score ? 5 : 2;
    static JudgePattern pattern;
    Error e = {""};
    JudgeReply r;
    double p[5], mass = 0;
    static JudgePattern lines;
    if (!pattern.groups)
        require(judge_pattern_open(&pattern, JUDGE_PATTERN, false, &e) &&
                judge_pattern_open(&lines, JUDGE_LINES_PATTERN, true, &e));
    if (!judge_reply_parse(&r, body, n, &e)) {
        require_error(&e);
        return;
    }
    const double value = judge_reply_match(&r, &pattern, labels, count, score);
    const double again = judge_reply_match(&r, &pattern, labels, count, score);
    require((isnan(value) && isnan(again)) || (value >= 0 && value <= 1 && value == again));
    for (int k = 0; k < 2; k++) {
        if (!judge_reply_labels(&r, labels, count, k ? "So:" : NULL, p, &mass)) continue;
        double sum = 0;
        for (int i = 0; i < count; i++) sum += p[i];
        require(mass > 0 && mass <= 1.01 && fabs(sum - 1) < 1e-9);
    }
    for (int k = 0; k < 3 && !score; k++) { /* of a rubric with five criteria */
        const char *end = k == 2 ? "So:" : NULL;
        if (!(k ? judge_reply_label_lines(&r, words, 5, end, p, &mass)
                : judge_reply_match_lines(&r, &lines, words, 5, p)))
            continue;
        for (int i = 0; i < 5; i++) require(p[i] >= 0 && p[i] <= 1);
        require(!k || (mass > 0 && mass <= 1.01));
    }
    judge_reply_free(&r);
}

static void fuzz_template(const char *text, size_t n) {
    Error e = {""};
    JudgeTemplate t;
    char *copy = xstrndup(text, n);
    JudgeQuestion q = {0};
    TextBuffer out = {0};
    for (int f = 0; f < JUDGE_FIELDS; f++) q.field[f] = (TextSlice){"{prompt}\0\xff", 10};
    if (!judge_template_parse(&t, copy, "t", &e)) require_error(&e);
    else {
        require(t.count >= 1 && t.count <= JUDGE_SECTIONS_MAX);
        for (int i = 0; i < t.count; i++) {
            size_t fields = 0, found = 0;
            judge_section_text(&t.section[i], &q, &out);
            for (int k = 0; k < t.section[i].count; k++) fields += t.section[i].piece[k].field >= 0;
            for (const char *s = out.text; (s = strstr(s, "{prompt}\xEF\xBF\xBD\xEF\xBF\xBD")); s++) found++;
            require(found >= fields);
        }
        judge_template_free(&t);
    }
    text_free(&out);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (!n) return 0;
    if (data[0] % 3 == 2) fuzz_template((const char *)data + 1, n - 1);
    else fuzz_reply((const char *)data + 1, n - 1, data[0] % 3 == 1);
    return 0;
}
