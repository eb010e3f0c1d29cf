/* option_ranking.h - --rank-options: of the options of each prompt, the one that is most likely.
 *
 *     evaluate_options(&ev, &shard);
 */
#ifndef LLMC_EVALUATE_OPTION_RANKING_H
#define LLMC_EVALUATE_OPTION_RANKING_H

#include "../base/clock.h"        /* clock_seconds */
#include "../base/error.h"        /* die, Error, xcalloc */
#include "../base/io.h"           /* Writer, writer_abort, writer_commit, writer_open */
#include "../base/program.h"      /* program_stopping */
#include "../records/shard.h"     /* Shard */
#include "../rollout/inference.h" /* json_line */
#include "../rollout/prompts.h"   /* Prompts */
#include "../rollout/ranking.h"   /* RankFigures, Ranking, rank_rule_name, RANK_SUM, ... */
#include "../text/chat.h"         /* chat_section */
#include "evaluator.h"            /* Evaluator, evaluator_count, evaluator_number, EvaluateOptions, ... */
#include "groups.h"               /* Groups, groups_report */
#include "prompt_rows.h"          /* prompt_row, prompt_rows_read, prompt_rows_release */

/* The figures of a ranking as JSON, and on standard error. */
static inline json_t *option_ranking_report(const char *name, const RankFigures *f) {
    json_t *figures = json_object();
    evaluator_count(figures, "prompts", f->count);
    evaluator_count(figures, "unscorable", f->unscorable);
    fprintf(stderr, "%s: %lld prompts", name, (long long)f->count);
    if (f->unscorable) fprintf(stderr, " and %lld that cannot be ranked", (long long)f->unscorable);
    for (RankRule rule = 0; rule < RANK_RULES; rule++) {
        char error[32];
        snprintf(error, sizeof error, "%s_stderr", rank_rule_name(rule));
        evaluator_number(figures, rank_rule_name(rule), f->accuracy[rule]);
        evaluator_number(figures, error, f->error[rule]);
        fprintf(stderr, "%s%s %.2f %%", rule ? ", " : "\n  ", rank_rule_name(rule), 100 * f->accuracy[rule]);
    }
    fputc('\n', stderr);
    return figures;
}

/* GroupFigures of a Ranking. */
static inline json_t *option_ranking_group(const void *ranking, const Groups *g, int group, const char *title) {
    bool *which = (bool *)xcalloc((size_t)g->prompts + 1, sizeof *which);
    for (int64_t i = 0; i < g->prompts; i++) which[i] = g->of[i] == group;
    const RankFigures f = ranking_figures((const Ranking *)ranking, which);
    free(which);
    return option_ranking_report(title, &f);
}

/* Writes the log-probabilities of a prompt's options to the file of --completions. */
static inline bool option_ranking_write(Evaluator *ev, Writer *out, const Ranking *r, int64_t i, Error *e) {
    const RankItem *x = &r->item[i];
    json_t *row = prompt_row(ev, r->prompts, i), *logprobs = json_array();
    for (int k = 0; k < x->count; k++) json_array_append_new(logprobs, x->fits ? json_real(x->logp[k]) : json_null());
    json_object_set_new(row, "logprobs", logprobs);
    json_object_set_new(row, "choice", x->fits ? json_integer(x->choice[RANK_SUM]) : json_null());
    json_object_set_new(row, "right",
                        x->fits && x->right >= 0 ? json_boolean(x->choice[RANK_SUM] == x->right) : json_null());
    const bool ok = json_line(out, row, e);
    json_decref(row);
    return ok;
}

/* The text between a prompt and an option: a space, as in lm-evaluation-harness, unless the chat template has a text
 * there. */
static inline const char *option_ranking_delimiter(Evaluator *ev) {
    const bool text = ev->model.text.has_template && !ev->model.text.chat.model;
    return text && !chat_section(&ev->model.text.chat, "assistant")->prefix.count ? " " : "";
}

/* Ranks the options of prompts instead of drawing completions. */
static inline void evaluate_options(Evaluator *ev, const Shard *s) {
    EvaluateOptions *o = ev->o;
    Error e;
    Prompts p;
    Ranking r;
    Writer out;
    const double start = clock_seconds();
    prompt_rows_read(&p, s, ev->model.model.config.context - 1);
    const int64_t count = evaluator_first(ev, p.count);
    const RankHow how = {.of = (RankOf)(o->rank - 1),
                         .delimiter = o->delimiter ? o->delimiter : option_ranking_delimiter(ev)};
    if (!ranking_open(&r, &p, count, &how, &ev->model.text, &e)) die("%s", e.text);
    if (o->completions && !writer_open(&out, o->completions, &e)) die("%s", e.text);
    if (!ranking_run(&r, &ev->model.model, (int)o->micro_tokens, &e)) {
        if (o->completions) writer_abort(&out);
        die("%s%s", e.text, program_stopping() ? "" : "; lower --micro-tokens");
    }
    for (int64_t i = 0; o->completions && i < count; i++)
        if (!option_ranking_write(ev, &out, &r, i, &e)) die("%s", e.text);
    if (o->completions && !writer_commit(&out, &e)) die("%s", e.text);
    groups_report(ev, &p, count, false, option_ranking_group, &r);
    const RankFigures f = ranking_figures(&r, NULL);
    json_t *figures = option_ranking_report("all", &f);
    json_object_update(ev->result, figures);
    json_decref(figures);
    evaluator_count(ev->result, "dropped", p.dropped);
    evaluator_number(ev->result, "seconds", clock_seconds() - start);
    ranking_close(&r);
    prompt_rows_release(&p);
}

#endif
