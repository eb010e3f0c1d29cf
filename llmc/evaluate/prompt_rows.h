/* prompt_rows.h - the prompts of a shard, and the rows of --completions.
 *
 *     prompt_rows_read(&prompts, &shard, 1023);
 *     json_t *row = prompt_row(&ev, &prompts, i);
 *     prompt_rows_release(&prompts);
 */
#ifndef LLMC_EVALUATE_PROMPT_ROWS_H
#define LLMC_EVALUATE_PROMPT_ROWS_H

#include "../base/error.h"        /* Error, die, warn */
#include "../records/shard.h"     /* Shard, Record */
#include "../rollout/inference.h" /* inference_prompt_row */
#include "../rollout/prompts.h"   /* Prompts, PromptText, prompts_close, prompts_length, ... */
#include "evaluator.h"            /* Evaluator, evaluator_count */

/* Reads the prompts of a shard, which the caller still owns. Prompts of more than `limit` tokens are left out. */
static inline void prompt_rows_read(Prompts *p, const Shard *s, int32_t limit) {
    Error e;
    *p = (Prompts){.shard = *s};
    if (!prompts_read(p, limit, &e)) die("%s", e.text);
    if (p->dropped)
        warn("%s: %lld prompts are longer than %d tokens and were left out", s->name, (long long)p->dropped, limit);
}

static inline void prompt_rows_release(Prompts *p) {
    p->shard = (Shard){0};
    prompts_close(p);
}

/* Prompt i as a row for --completions. Fields of the prompt with names of the program's own are kept in `fields`. */
static inline json_t *prompt_row(Evaluator *ev, const Prompts *p, int64_t i) {
    const PromptText *what = &p->what[i];
    const Record r = {.tokens = (int32_t *)prompts_tokens(p, i),
                      .count = prompts_length(p, i),
                      .text = what->text,
                      .task = what->task,
                      .answer = what->answer,
                      .fields = what->fields};
    static const char *const own[] = {"data",  "search", "think_budget", "think_tokens", "logprobs",  "ignored_ends",
                                      "drawn", "stop",   "turn_rewards", "choice",       "end_reward"};
    json_t *row = inference_prompt_row(&ev->model, &r);
    for (size_t k = 0; k < sizeof own / sizeof *own; k++) {
        json_t *value = json_object_get(row, own[k]);
        if (!value) continue;
        if (!json_object_get(row, "fields")) json_object_set_new(row, "fields", json_object());
        json_object_set(json_object_get(row, "fields"), own[k], value);
        json_object_del(row, own[k]);
    }
    evaluator_count(row, "index", i);
    if (ev->inputs.count > 1) json_object_set_new(row, "data", json_string(ev->inputs.path[what->file]));
    return row;
}

#endif
