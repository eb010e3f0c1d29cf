/* test_audit.h - --audit-tests: prompts of the task code whose tests are passed by a program that solves nothing.
 *
 *     evaluate_tests(&ev, &shard);
 */
#ifndef LLMC_EVALUATE_TEST_AUDIT_H
#define LLMC_EVALUATE_TEST_AUDIT_H

#include "../base/error.h"           /* die, Error */
#include "../base/program.h"         /* program_stopping */
#include "../base/text.h"            /* TextBuffer, text_string, text_clear, text_free, ... */
#include "../records/shard.h"        /* Shard */
#include "../reward/code_judge.h"    /* CodeRow, code_judge_close, code_judge_row, code_judge_score */
#include "../reward/code_reward.h"   /* CODE_REWARD_ALL, CodeVerdict, code_reward */
#include "../reward/verify_answer.h" /* RewardInput */
#include "../rollout/prompts.h"      /* prompts_empty */
#include "../rollout/prompts_code.h" /* prompts_run, prompts_runs */
#include "evaluator.h"               /* Evaluator, evaluator_count, evaluator_first */
#include "prompt_rows.h"             /* prompt_rows_read, prompt_rows_release */
#include "tasks.h"                   /* Tasks, tasks_open_code */

/* Programs that solve nothing. */
typedef enum { NULL_PASS, NULL_RETURN, NULL_EXIT, NULL_COUNT } NullProgram;

static const char *const null_names[NULL_COUNT] = {"pass", "return None", "exit(0)"};

/* Appends the name of the function that a test calls first, or "" if it calls none. */
static inline void audit_called(const json_t *test, TextBuffer *name) {
    const char *text = json_string_value(json_object_get(test, "call"));
    text_clear(name);
    if (!text) text = json_string_value(json_object_get(test, "eval"));
    if (text) text_append(name, text, strspn(text, "_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"));
}

/* A program that solves nothing, for a record's tests; "return None" is one for each function that they call. */
static inline void audit_program(const CodeRow *r, NullProgram which, TextBuffer *program) {
    TextBuffer name = {0}, line = {0};
    text_clear(program);
    if (r->c) text_string(program, "int main(void) { return 0; }");
    else if (which != NULL_RETURN) text_string(program, null_names[which]);
    for (size_t i = 0; !r->c && which == NULL_RETURN && i <= json_array_size(r->tests); i++) {
        audit_called(json_array_get(r->tests, i), &name);
        if (i == json_array_size(r->tests) && r->entry) text_string(&name, r->entry);
        text_clear(&line);
        if (name.length) text_format(&line, "def %s(*args, **kwargs):\n    return None\n", name.text);
        if (line.length && !(program->length && strstr(program->text, line.text))) text_string(program, line.text);
    }
    text_free(&name), text_free(&line);
}

/* Lists the prompts whose tests a program that solves nothing passes. */
static inline void evaluate_tests(Evaluator *ev, const Shard *s) {
    Error e;
    Tasks t = {.ev = ev};
    prompt_rows_read(&t.prompts, s, INT32_MAX);
    if (!prompts_run(&t.prompts, NULL)) die("%s: no prompt has the task code", s->name);
    tasks_open_code(&t);
    json_t *rows = json_array();
    int64_t count = 0;
    TextBuffer program = {0};
    const int64_t prompts = evaluator_first(ev, t.prompts.count);
    for (int64_t i = 0; i < prompts && !program_stopping(); i++) {
        if (!prompts_runs(&t.prompts, NULL, i)) continue;
        json_t *passing = json_array();
        count++;
        for (int k = 0; k < NULL_COUNT; k++) {
            RewardInput in = prompts_empty(&t.prompts, i);
            CodeVerdict verdict;
            const CodeRow *r = code_judge_row(&t.code, &in, &e);
            if (!r) die("%s", e.text);
            audit_program(r, (NullProgram)k, &program);
            in.completion = program.text;
            if (!program.length) continue;
            if (!code_judge_score(&t.code, &in, 1, true, &verdict, &e)) die("%s", e.text);
            if (code_reward(&verdict, CODE_REWARD_ALL, 0) == 1)
                json_array_append_new(passing, json_string(null_names[k]));
        }
        if (json_array_size(passing)) {
            json_array_append_new(rows, json_pack("{s:I,s:O}", "index", (json_int_t)i, "completions", passing));
            fprintf(stderr, "record %lld: its tests pass with '%s': %.60s\n", (long long)i,
                    json_string_value(json_array_get(passing, 0)), t.prompts.what[i].text);
        }
        json_decref(passing);
    }
    text_free(&program);
    if (program_stopping()) {
        code_judge_close(&t.code);
        die("stopped by a signal before the end of %s", s->name);
    }
    fprintf(stderr, "%zu of %lld prompts have tests that a program which solves nothing passes\n",
            json_array_size(rows), (long long)count);
    evaluator_count(ev->result, "prompts", count);
    json_object_set_new(ev->result, "audit", rows);
    code_judge_close(&t.code);
    prompt_rows_release(&t.prompts);
}

#endif
