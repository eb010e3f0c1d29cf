/* token_page.h - texts with what two models give each of their tokens, as an HTML page.
 *
 *     TokenPage page = {0};
 *     token_page_add(&page, &(TokenRow){.text = 0, .bytes = "a", .n = 1, .logp = -0.1, .reference_logp = -0.5});
 *     token_page_write(f, "a.bin and b.bin on val.shard", &page);
 *     token_page_free(&page);
 *
 * A text is a record, a window or a sample. Its tokens are coloured by the exact KL divergence at each of them, or by another
 * value that the reader chooses; without the script (rollouts.js) by the divergence. The page keeps the first texts, up to
 * TOKEN_PAGE_TOKENS tokens, and says how many it leaves out.
 */
#ifndef LLMC_REPORT_TOKEN_PAGE_H
#define LLMC_REPORT_TOKEN_PAGE_H

#include "../base/error.h"     /* checked_object */
#include "../base/json_text.h" /* json_finite, json_utf8 */
#include "../base/text.h"      /* text_append, TextBuffer, text_free */
#include "html.h"              /* html_bytes, html_text */
#include "report_head.h"       /* report_begin, report_end */
#include "report_rollouts.h"   /* html_json, rollouts_dump */
#include "rollouts.h"          /* RolloutTexts, rollout_texts, rollout_texts_add, rollout_texts_end */
#include "style.h"             /* keep: rollouts_js */
#include <jansson.h>
#include <math.h>

enum { TOKEN_PAGE_TOKENS = 4096, TOKEN_PAGE_FIGURES = 16 };

/* A token and its values. */
typedef struct TokenRow {
    int64_t text;      /* number of the text */
    const char *bytes; /* (n) */
    size_t n;
    double logp, reference_logp, entropy; /* nats; the entropy is the model's */
    double kl;                            /* KL(model || reference) at this token, in nats */
    int rank;                             /* of the token under the model, from 1 */
    json_t *top;                          /* the likeliest tokens, [text, probability] each; taken over; NULL: none */
    json_t *before;                       /* of the first token of a text: the text before it; taken over; NULL: none */
} TokenRow;

/* A figure of the whole, such as a mean. */
typedef struct TokenFigure {
    const char *name;
    double value;
} TokenFigure;

typedef struct TokenPage {
    json_t *texts;      /* objects; NULL: there is none */
    json_t *text;       /* the last one */
    RolloutTexts words; /* of the last one */
    int64_t number;     /* of the last one */
    int64_t tokens;     /* kept */
    int64_t left_out;   /* tokens that are not */
    TokenFigure figure[TOKEN_PAGE_FIGURES];
    int figures;
} TokenPage;

/* Ends the last text. */
static inline void token_page_end_text(TokenPage *p) {
    if (!p->text) return;
    const size_t n = json_array_size(p->words.all);
    if (p->words.rest.length) { /* the last token ends within a character */
        const json_t *last = json_array_get(p->words.all, n - 1);
        TextBuffer word = {0};
        text_append(&word, json_string_value(last), json_string_length(last));
        text_append(&word, p->words.rest.text, p->words.rest.length);
        json_array_set_new(p->words.all, n - 1, json_utf8(word.text, word.length));
        text_free(&word);
    }
    json_object_set_new(p->text, "tokens", rollout_texts_end(&p->words));
    p->text = NULL;
}

static inline void token_page_begin_text(TokenPage *p, const TokenRow *row) {
    static const char *const lists[] = {"logp", "ref_logp", "entropy", "exact", "rank", "top"};
    token_page_end_text(p);
    if (!p->texts) p->texts = (json_t *)checked_object(json_array(), "a JSON array");
    p->text = (json_t *)checked_object(json_object(), "a JSON object");
    p->words = rollout_texts();
    p->number = row->text;
    json_object_set_new(p->text, "index", json_integer(row->text));
    if (row->before) json_object_set(p->text, "before", row->before);
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) json_object_set_new(p->text, lists[i], json_array());
    json_array_append_new(p->texts, p->text);
}

/* Whether the page takes no more tokens: then n of them are counted as left out, and token_page_add() need not be called. */
static inline bool token_page_full(TokenPage *p, int64_t n) {
    if (!p->left_out) return false;
    p->left_out += n;
    return true;
}

/* Adds the next token. */
static inline void token_page_add(TokenPage *p, const TokenRow *row) {
    const bool begins = !p->text || p->number != row->text;
    if (begins ? p->left_out || p->tokens >= TOKEN_PAGE_TOKENS : p->tokens >= 2 * TOKEN_PAGE_TOKENS) {
        token_page_end_text(p);
        p->left_out++;
        p->number = row->text;
    } else {
        if (begins) token_page_begin_text(p, row);
        p->tokens++;
        rollout_texts_add(&p->words, row->bytes, row->n, false);
        json_array_append_new(json_object_get(p->text, "logp"), json_finite(row->logp));
        json_array_append_new(json_object_get(p->text, "ref_logp"), json_finite(row->reference_logp));
        json_array_append_new(json_object_get(p->text, "entropy"), json_finite(row->entropy));
        json_array_append_new(json_object_get(p->text, "exact"), json_finite(row->kl));
        json_array_append_new(json_object_get(p->text, "rank"), json_integer(row->rank));
        json_array_append(json_object_get(p->text, "top"), row->top ? row->top : json_null());
    }
    json_decref(row->top), json_decref(row->before);
}

/* Adds a figure, which the page shows above the texts; at most TOKEN_PAGE_FIGURES. */
static inline void token_page_figure(TokenPage *p, const char *name, double value) {
    if (p->figures < TOKEN_PAGE_FIGURES) p->figure[p->figures++] = (TokenFigure){name, value};
}

static inline void token_page_free(TokenPage *p) {
    token_page_end_text(p);
    json_decref(p->texts);
    *p = (TokenPage){0};
}

/* ---- writing ---- */

static inline double token_page_value(const json_t *text, const char *key, size_t i) {
    const json_t *value = json_array_get(json_object_get(text, key), i);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static inline void token_page_say(FILE *f, const char *name, double value) {
    if (isfinite(value)) fprintf(f, "%s %.3g", name, value);
    else fprintf(f, "%s unknown", name);
}

/* Writes a text with its tokens coloured by their divergence. */
static inline void token_page_static(FILE *f, const json_t *text) {
    const json_t *tokens = json_object_get(text, "tokens"), *before = json_object_get(text, "before");
    double most = 0;
    for (size_t i = 0; i < json_array_size(tokens); i++) most = fmax(most, token_page_value(text, "exact", i));
    fprintf(f, "<article class='prompt'><div class='ask'><span class='n'>%lld</span><pre>",
            (long long)json_integer_value(json_object_get(text, "index")));
    if (before) html_bytes(f, json_string_value(before), json_string_length(before));
    fputs("</pre></div><div class='take'><pre class='tokens'>", f);
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        const json_t *token = json_array_get(tokens, i);
        const double kl = token_page_value(text, "exact", i);
        fputs("<span title='", f);
        token_page_say(f, "KL", kl);
        token_page_say(f, ", log-probability", token_page_value(text, "logp", i));
        token_page_say(f, ", of the reference", token_page_value(text, "ref_logp", i));
        fputs("'", f);
        if (most > 0 && kl > 0) fprintf(f, " style='background:rgba(58,134,205,%.3f)'", 0.55 * kl / most);
        fputs(">", f);
        html_bytes(f, json_string_value(token), json_string_length(token));
        fputs("</span>", f);
    }
    fputs("</pre></div></article>\n", f);
}

/* Writes the page. what: the models and the data. */
static inline void token_page_write(FILE *f, const char *what, TokenPage *p) {
    token_page_end_text(p);
    report_begin(f, "Two models, token by token", false);
    fputs("<header><h1>Two models, token by token</h1><p class='note'>", f);
    html_text(f, what);
    fputs("</p></header>\n<section><h2>Figures</h2><p class='note'>Means per token, in nats, computed over the whole "
          "vocabulary.</p><div class='scroll'><table class='all figures'><tbody>\n",
          f);
    for (int i = 0; i < p->figures; i++) {
        fputs("<tr><td>", f);
        html_text(f, p->figure[i].name);
        if (isfinite(p->figure[i].value)) fprintf(f, "</td><td>%.6f</td></tr>\n", p->figure[i].value);
        else fputs("</td><td></td></tr>\n", f);
    }
    fputs("</tbody></table></div></section>\n<section id='texts'><h2>Texts</h2><p class='note'>", f);
    if (p->left_out)
        fprintf(f, "The first %lld tokens; %lld more are not in the page. ", (long long)p->tokens,
                (long long)p->left_out);
    fputs("The stronger the colour, the larger the value, compared with the largest of the same text.</p>\n"
          "<div class='widget' data-widget='tokens'>\n",
          f);
    for (size_t i = 0; i < json_array_size(p->texts); i++) token_page_static(f, json_array_get(p->texts, i));
    fputs("</div>\n<script type='application/json' id='tokens-data'>", f);
    char *data = p->texts ? rollouts_dump(p->texts) : NULL;
    html_json(f, data ? data : "[]");
    free(data);
    fputs("</script></section>\n", f);
    report_end(f, rollouts_js());
}

#endif
