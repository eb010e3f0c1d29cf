/* answer.h - completions that are printed while they are drawn: of one turn (answer_run) and of several, with what the
 * model observed in another colour (AnswerTurns).
 *
 *     Printer p = printer_open(&tokenizer);
 *     AnswerEnd end;
 *     Sequence s;
 *     if (!sequence_new(&s, &model, 1024, &e)) return false;
 *     sequence_set(&s, prompt, prompt_len);
 *     if (!answer_run(&s, &sampling, 0, &p, NULL, &end, &e) || !printer_end(&p, &e)) die("%s", e.text);
 *     printf("%lld tokens\n", (long long)end.drawn);
 *
 *     AnswerTurns t;
 *     answer_turns_open(&t, &tokenizer, &sampling, &turns);
 *     engine.turns = &t.turns;
 *     if (!answer_turns_run(&t, &engine, &requests[0], &e)) die("%s", e.text);        // prints a newline at the end
 *     answer_turns_close(&t);
 */
#ifndef LLMC_TERMINAL_ANSWER_H
#define LLMC_TERMINAL_ANSWER_H

#include "../base/clock.h"         /* clock_seconds */
#include "../base/error.h"         /* Error, PLURAL */
#include "../base/program.h"       /* program_stopping */
#include "../base/terminal.h"      /* terminal_colors */
#include "../base/text.h"          /* TextBuffer, TokenList, text_free, token_list_append, ... */
#include "../rollout/rollout.h"    /* RolloutTurns, RolloutSample, Sampling, Completion, ... */
#include "../rollout/sequence.h"   /* Sequence, sequence_draw */
#include "../rollout/stop_text.h"  /* stop_text_cut, stop_text_longest */
#include "../rollout/trajectory.h" /* STOP_INTERRUPTED, Trajectory, trajectory_stop_name */
#include "../text/text_stream.h"   /* text_stream_cut */
#include "../text/tokenizer.h"     /* tokenizer_decode_more, Tokenizer */
#include "printer.h"               /* printer_flush, Printer, printer_end, printer_open, ... */
#include <time.h>

/* ---- one turn -------------------------------------------------------------------------------------------------- */

typedef struct AnswerEnd {
    int64_t drawn; /* tokens */
    double first;  /* clock_seconds() when the first of them was drawn; 0: none was */
    bool finished; /* by a stop token or a stop text; false: by a limit or a signal */
} AnswerEnd;

/* The bytes that must be held back because a text of --stop may begin with them. */
static inline size_t answer_held(const Sampling *how) {
    const size_t longest = stop_text_longest(&how->texts);
    return longest ? longest - 1 : 0;
}

/* Removes n bytes at the end of a text. */
static inline void answer_cut(TextBuffer *t, size_t n) {
    t->length -= n < t->length ? n : t->length;
    t->text[t->length] = 0;
}

/* Samples and prints the completion of the sequence, up to a stop token, the limit or a signal. said: its text is appended
 * to it; may be NULL. */
static inline bool answer_run(Sequence *s, const Sampling *how, uint64_t id, Printer *p, TextBuffer *said,
                              AnswerEnd *end, Error *e) {
    bool started = false;
    const int32_t first = s->count;
    p->text.held = answer_held(how);
    *end = (AnswerEnd){0};
    while (end->drawn < how->max_new && s->count < s->capacity && !program_stopping()) {
        int32_t token;
        float logp;
        if (!sequence_draw(s, how, id, &token, &logp, e)) return false;
        if (!end->drawn++) end->first = clock_seconds();
        end->finished = sampling_is_stop(how, token);
        if (end->finished) break;
        const size_t cut = stop_text_cut(&how->texts, s->tokens + first, (int32_t)end->drawn);
        if (said) tokenizer_decode_more(p->tokenizer, &token, 1, false, &started, said);
        tokenizer_decode_more(p->tokenizer, &token, 1, false, &p->text.started, &p->text.waiting);
        if (cut) {
            end->finished = true;
            text_stream_cut(&p->text, cut);
            if (said) answer_cut(said, cut);
            break;
        }
        if (!printer_flush(p, false, e)) return false;
    }
    return printer_flush(p, true, e);
}

/* ---- several turns --------------------------------------------------------------------------------------------- */

typedef struct AnswerTurns {
    Printer printer;
    const Sampling *how;
    const RolloutTurns *inner; /* the environment */
    RolloutTurns turns;        /* the one that prints what it answers */
    TokenList turn;            /* drawn tokens of this turn */
    bool colors;
    int64_t drawn;
    bool stopped; /* by a signal */
    bool failed;  /* standard output; `why` */
    Error why;
} AnswerTurns;

static inline void answer_check(AnswerTurns *t, bool ok) { t->failed = t->failed || !ok; }

/* Prints a token as soon as it is drawn; RolloutWatch. */
static inline void answer_drawn(void *context, int64_t request, int32_t sample, int32_t token) {
    AnswerTurns *t = (AnswerTurns *)context;
    (void)request, (void)sample;
    t->drawn++;
    if (sampling_is_stop(t->how, token)) return;
    token_list_append(&t->turn, token);
    tokenizer_decode_more(t->printer.tokenizer, &token, 1, t->inner->specials, &t->printer.text.started,
                          &t->printer.text.waiting);
    text_stream_cut(&t->printer.text, stop_text_cut(&t->how->texts, t->turn.ids, t->turn.count));
    answer_check(t, printer_flush(&t->printer, false, &t->why));
}

static inline bool answer_open(void *context, const RolloutSample *who, const Completion *c) {
    const RolloutTurns *x = ((AnswerTurns *)context)->inner;
    return x->open(x->context, who, c);
}

static inline bool answer_turn(void *context, const RolloutSample *who, const Completion *c) {
    const RolloutTurns *x = ((AnswerTurns *)context)->inner;
    return x->turn(x->context, who, c);
}

/* Prints what follows a turn. */
static inline int answer_ready(void *context, bool wait, RolloutAnswer *answer, Error *e) {
    AnswerTurns *t = (AnswerTurns *)context;
    const int got = t->inner->ready(t->inner->context, wait, answer, e);
    if (got <= 0 || answer->over) return got;
    t->turn.count = 0;
    answer_check(t, printer_flush(&t->printer, true, &t->why));
    if (t->colors) fputs("\033[36m", stdout);
    answer_check(t, printer_tokens(&t->printer, answer->ids, answer->count, t->inner->specials, &t->why) &&
                        printer_flush(&t->printer, true, &t->why));
    if (t->colors) fputs("\033[0m", stdout);
    return got;
}

static inline void answer_end(void *context, const RolloutSample *who, const Completion *c) {
    const RolloutTurns *x = ((AnswerTurns *)context)->inner;
    x->end(x->context, who, c);
}

static inline bool answer_finish(void *context, Error *e) {
    const RolloutTurns *x = ((AnswerTurns *)context)->inner;
    return x->finish(x->context, e);
}

/* how and inner must outlive *t, which must not move afterwards. */
static inline void answer_turns_open(AnswerTurns *t, const Tokenizer *tokenizer, const Sampling *how,
                                     const RolloutTurns *inner) {
    *t = (AnswerTurns){.printer = printer_open(tokenizer),
                       .how = how,
                       .inner = inner,
                       .turns = *inner,
                       .colors = terminal_colors(STDOUT_FILENO)};
    t->printer.text.held = answer_held(how);
    t->turns.context = t;
    if (inner->open) t->turns.open = answer_open;
    t->turns.turn = answer_turn;
    t->turns.ready = answer_ready;
    t->turns.end = answer_end;
    t->turns.finish = answer_finish;
}

static inline void answer_turns_close(AnswerTurns *t) {
    text_free(&t->printer.text.waiting);
    token_list_free(&t->turn);
}

/* Prints on standard error how an answer ended. why: the reason of a tool that failed, or NULL. */
static inline void answer_tell_end(const AnswerTurns *t, const Trajectory *y, const char *why) {
    char unread[60] = "";
    if (y->unread) snprintf(unread, sizeof unread, ", %d result%s not read", y->unread, PLURAL(y->unread));
    fprintf(stderr, "[%s after %d turn%s, %lld token%s drawn%s%s%s]\n", trajectory_stop_name(y->stop), y->turns,
            PLURAL(y->turns), (long long)t->drawn, PLURAL(t->drawn), unread, why ? ": " : "", why ? why : "");
}

/* The sampling of answer_turns_run(). Results of tools are polled, so that a signal need not wait for one. */
static inline bool answer_turns_draw(AnswerTurns *t, Rollout *r, RolloutRequest *q, Error *e) {
    const struct timespec pause = {.tv_nsec = 2000000};
    int64_t next = 0;
    rollout_begin(r);
    while (!t->failed) {
        if (program_stopping()) {
            t->stopped = true;
            q->out->trajectory->stop = STOP_INTERRUPTED;
            rollout_end(r, &(RolloutSample){q, 0, 0}, q->out);
            return true;
        }
        if (r->parked && !rollout_answers(r, t->how, q, false, e)) return false;
        const int free_slots = rollout_gather(r, t->how, q);
        rollout_add_prompts(r, t->how, q, 1, &next, free_slots);
        if (!r->batch.rows && !r->parked) return true;
        if (!r->batch.rows) nanosleep(&pause, NULL);
        else if (!rollout_call(r, t->how, q, e)) return false;
        else rollout_take(r, t->how, q, answer_drawn, t);
    }
    *e = t->why;
    return false;
}

/* Draws the one sample of a request whose turns may call tools, prints it while it is drawn, and a newline. After a signal
 * it ends with STOP_INTERRUPTED. */
static inline bool answer_turns_run(AnswerTurns *t, Rollout *r, RolloutRequest *q, Error *e) {
    t->drawn = 0;
    t->turn.count = 0;
    t->stopped = false;
    t->printer.text.started = false;
    if (!rollout_check(r, q, 1, e)) return false;
    rollout_open(r, t->how, q);
    if (!answer_turns_draw(t, r, q, e) || !printer_end(&t->printer, e)) return false;
    return t->turns.finish(t->turns.context, e);
}

#endif
