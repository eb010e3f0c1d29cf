/* report_samples.h - completions of the same prompts side by side, in a report.
 *
 *     report_samples(f, &history);
 *
 * Completions from before training are on the left and those from after it on the right, each with its reward; samples
 * taken in between are folded away. Above them is the number of right ones, with one square for each completion. A
 * completion counts as right at a reward of 0.9 or more and as wrong below 0.5. The section is omitted if there are no
 * samples.
 */
#ifndef LLMC_REPORT_REPORT_SAMPLES_H
#define LLMC_REPORT_REPORT_SAMPLES_H

#include "../base/error.h" /* xcalloc, xrealloc */
#include "chart_text.h"    /* chart_value */
#include "history.h"       /* History, Sample */
#include "html.h"          /* html_text, html_bytes, html_rest, html_shown */

enum {
    REPORT_SHOWN = 8,    /* prompts shown unfolded */
    REPORT_PROMPTS = 64, /* maximum number of prompts shown */
    REPORT_TEXT = 6000   /* bytes shown of a completion */
};

/* The class of a completion in the style: right, wrong, partly right, or none if it was not scored. */
static inline const char *report_class(double reward) {
    return !isfinite(reward) ? "" : reward >= 0.9 ? "ok" : reward < 0.5 ? "bad" : "mid";
}

/* Writes a completion; unless it is wrong, the last occurrence of the answer is marked. */
static inline void report_completion(FILE *f, const Sample *s) {
    const size_t n = html_shown(s->completion, REPORT_TEXT);
    const char *found = NULL;
    if (s->answer[0] && isfinite(s->reward) && s->reward >= 0.5)
        for (const char *c = s->completion; (c = strstr(c, s->answer)); c++)
            if ((size_t)(c - s->completion) + strlen(s->answer) <= n) found = c;
    fputs("<pre>", f);
    if (!n) fputs("<span class='none'>empty</span>", f);
    if (found) {
        const size_t at = (size_t)(found - s->completion), length = strlen(s->answer);
        html_bytes(f, s->completion, at);
        fputs("<mark>", f);
        html_bytes(f, found, length);
        fputs("</mark>", f);
        html_bytes(f, found + length, n - at - length);
    } else html_bytes(f, s->completion, n);
    html_rest(f, s->completion, n);
    fputs("</pre>", f);
}

/* Writes one completion with its tag and reward. scored: some sample has a reward, so the lack of one is mentioned. */
static inline void report_take(FILE *f, const Sample *s, bool scored) {
    const char *class = report_class(s->reward);
    char text[32];
    chart_value(s->reward, false, text);
    fprintf(f, "<div class='take %s'><div class='got'><span>", class);
    html_text(f, s->when);
    fputs("</span>", f);
    if (!isfinite(s->reward)) fputs(scored ? "not scored" : "", f);
    else {
        const char *verdict = *class == 'o'   ? "\xE2\x9C\x93 right"
                              : *class == 'b' ? "\xE2\x9C\x97 wrong"
                                              : "\xE2\x89\x88 partly right";
        fprintf(f, "%s, reward %s", verdict, text);
    }
    fputs("</div>", f);
    report_completion(f, s);
    fputs("</div>", f);
}

/* The samples' distinct prompts, in order of appearance, and distinct tags, with "before" first and "after" last. */
typedef struct ReportSamples {
    const char **prompts, **tags; /* (prompt_count), (tag_count) distinct */
    size_t prompt_count, tag_count;
    size_t *prompt_of, *tag_of; /* (samples) indices into prompts and tags */
    bool scored;                /* at least one sample has a reward */
} ReportSamples;

/* Returns the index of text in a list of distinct texts, to which it is added if necessary. */
static inline size_t report_intern(const char ***list, size_t *count, const char *text) {
    for (size_t i = *count; i-- > 0;) /* backwards: equal texts are usually adjacent */
        if (!strcmp((*list)[i], text)) return i;
    *list = (const char **)xrealloc(*list, *count + 1, sizeof **list);
    (*list)[*count] = text;
    return (*count)++;
}

/* The caller frees the four arrays. */
static inline ReportSamples report_samples_sort(const History *h) {
    ReportSamples r = {0};
    r.prompt_of = (size_t *)xcalloc(h->sample_count, sizeof *r.prompt_of);
    r.tag_of = (size_t *)xcalloc(h->sample_count, sizeof *r.tag_of);
    static const char *const ends[2] = {"before", "after"};
    for (int pass = 0; pass < 3; pass++) /* before; in between; after */
        for (size_t i = 0; i < h->sample_count; i++) {
            const char *when = h->samples[i].when;
            const int turn = !strcmp(when, ends[0]) ? 0 : !strcmp(when, ends[1]) ? 2 : 1;
            if (turn == pass) r.tag_of[i] = report_intern(&r.tags, &r.tag_count, when);
        }
    for (size_t i = 0; i < h->sample_count; i++) {
        r.prompt_of[i] = report_intern(&r.prompts, &r.prompt_count, h->samples[i].prompt);
        r.scored |= isfinite(h->samples[i].reward);
    }
    return r;
}

/* Writes all samples of one prompt and tag. */
static inline void report_takes(FILE *f, const History *h, const ReportSamples *r, size_t prompt, size_t tag) {
    fputs("<div class='takes'>", f);
    bool any = false;
    for (size_t i = 0; i < h->sample_count; i++)
        if (r->prompt_of[i] == prompt && r->tag_of[i] == tag) {
            report_take(f, &h->samples[i], r->scored);
            any = true;
        }
    if (!any) {
        fputs("<div class='take'><div class='got'><span>", f);
        html_text(f, r->tags[tag]);
        fputs("</span></div><span class='none'>not sampled</span></div>", f);
    }
    fputs("</div>", f);
}

/* Writes a prompt, its expected answer and its completions. */
static inline void report_prompt(FILE *f, const History *h, const ReportSamples *r, size_t prompt) {
    const char *answer = "";
    bool between = false;
    for (size_t i = 0; i < h->sample_count; i++)
        if (r->prompt_of[i] == prompt) {
            if (h->samples[i].answer[0]) answer = h->samples[i].answer;
            between |= r->tag_of[i] > 0 && r->tag_of[i] + 1 < r->tag_count;
        }
    fprintf(f, "<article class='prompt' id='prompt-%zu'><div class='ask'><span class='n'>%zu</span><pre>", prompt + 1,
            prompt + 1);
    html_text(f, r->prompts[prompt]);
    fputs("</pre>", f);
    if (answer[0]) {
        fputs("<span class='answer'>expected <code>", f);
        html_text(f, answer);
        fputs("</code></span>", f);
    }
    fputs("</div><div><div class='pair'>", f);
    report_takes(f, h, r, prompt, 0);
    if (r->tag_count > 1) report_takes(f, h, r, prompt, r->tag_count - 1);
    fputs("</div>", f);
    if (between) {
        fputs("<details><summary>in between</summary><div class='between'>", f);
        for (size_t tag = 1; tag + 1 < r->tag_count; tag++) report_takes(f, h, r, prompt, tag);
        fputs("</div></details>", f);
    }
    fputs("</div></article>\n", f);
}

/* Writes how many samples of a tag are right, and one square for each, which links to its prompt. */
static inline void report_tally(FILE *f, const History *h, const ReportSamples *r, size_t tag) {
    size_t right = 0, all = 0;
    for (size_t i = 0; i < h->sample_count; i++)
        if (r->tag_of[i] == tag && isfinite(h->samples[i].reward)) {
            all++;
            right += h->samples[i].reward >= 0.9;
        }
    if (!all) return;
    fputs("<span>", f);
    html_text(f, r->tags[tag]);
    fprintf(f, "</span><span><b>%zu of %zu</b> right</span><div>", right, all);
    for (size_t prompt = 0; prompt < r->prompt_count && prompt < REPORT_PROMPTS; prompt++)
        for (size_t i = 0; i < h->sample_count; i++)
            if (r->tag_of[i] == tag && r->prompt_of[i] == prompt && isfinite(h->samples[i].reward))
                fprintf(f, "<a class='%s' href='#prompt-%zu' title='prompt %zu' aria-label='prompt %zu'></a>",
                        report_class(h->samples[i].reward), prompt + 1, prompt + 1, prompt + 1);
    fputs("</div>", f);
}

/* Writes the section. */
static inline void report_samples(FILE *f, const History *h) {
    if (!h->sample_count) return;
    ReportSamples r = report_samples_sort(h);
    fputs("<section id='samples'><h2>Samples</h2><p class='note'>Completions of the same prompts", f);
    if (r.tag_count > 1) fputs(", side by side", f);
    fprintf(f, ".%s</p>\n<div class='tally'>",
            r.scored ? " A completion is right at a reward of 0.9 or more and wrong below 0.5. The expected answer is "
                       "underlined in completions that are not wrong."
                     : "");
    report_tally(f, h, &r, 0);
    if (r.tag_count > 1) report_tally(f, h, &r, r.tag_count - 1);
    fputs("</div>\n", f);
    const size_t shown = r.prompt_count < REPORT_PROMPTS ? r.prompt_count : REPORT_PROMPTS;
    for (size_t i = 0; i < shown; i++) {
        if (i == REPORT_SHOWN) fprintf(f, "<details><summary>%zu more prompts</summary>\n", shown - i);
        report_prompt(f, h, &r, i);
    }
    if (shown > REPORT_SHOWN) fputs("</details>", f);
    if (shown < r.prompt_count)
        fprintf(f, "<p class='note'>%zu further prompts are not shown.</p>", r.prompt_count - shown);
    fputs("</section>\n", f);
    free(r.prompts);
    free(r.tags);
    free(r.prompt_of);
    free(r.tag_of);
}

#endif
