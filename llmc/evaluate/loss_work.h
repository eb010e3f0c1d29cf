/* loss_work.h - what a loss is computed with: the batch, its workspace and the results of its targets.
 *
 *     if (program_stopping()) loss_abort(&w);           // removes the unfinished files of --tokens and --report
 *     double bytes = loss_token_bytes(&w, ids[i]);      // of text; 0 for special tokens
 */
#ifndef LLMC_EVALUATE_LOSS_WORK_H
#define LLMC_EVALUATE_LOSS_WORK_H

#include "../base/io.h"            /* writer_abort, Writer */
#include "../model/batch.h"        /* Batch */
#include "../model/workspace.h"    /* Workspace */
#include "../report/token_page.h"  /* TokenPage */
#include "../rollout/comparison.h" /* Comparison */
#include "../text/tokenizer.h"     /* Tokenizer, tokenizer_token */
#include "evaluator.h"             /* Evaluator */

typedef struct LossWork {
    Evaluator *ev;
    Workspace space;
    Batch batch;
    float *logp, *entropy;
    int32_t *argmax;
    Comparison *other; /* with --reference */
    bool sampled;      /* the targets are tokens that the model drew at this temperature */
    float temperature;
    int64_t unit;             /* number of the batch's first unit, for --tokens and --report */
    Writer tokens, page_file; /* --tokens, --report */
    TokenPage page;
} LossWork;

/* Removes the unfinished files of --tokens and --report, before the program ends by an error. */
static inline void loss_abort(LossWork *w) {
    if (w->ev->o->tokens) writer_abort(&w->tokens);
    if (w->ev->o->report && w->other) writer_abort(&w->page_file);
}

/* Bytes of text of a token; 0 for special tokens. */
static inline double loss_token_bytes(const LossWork *w, int32_t id) {
    const Tokenizer *t = &w->ev->model.text.tokenizer;
    size_t n = 0;
    if (w->ev->model.text.present && id < t->vocab && !t->special[id]) tokenizer_token(t, id, &n);
    return (double)n;
}

#endif
