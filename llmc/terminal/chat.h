/* chat.h - a conversation with a person, on a terminal or by lines of standard input.
 *
 * Each line is a message, and the answer to it is printed while it is drawn. On a terminal, lines are edited by libedit and
 * kept in a history. Lines that begin with / are commands: /help lists them. Ctrl-C stops an answer.
 *
 * With tools, an answer is a completion of several turns, whose calls are run by the environment that the trainers use
 * (../rollout/episodes.h). The tokens of the conversation, calls and results included, stay in the engine's cache: an answer
 * costs only what is new.
 *
 *     Chat c = {.model = &model, .text = &model_text, .how = &sampling, .length = 1024};
 *     if (!chat_open(&c, "You are terse.", &e) || !chat_run(&c, &e)) die("%s", e.text);
 *     chat_close(&c);
 */
#ifndef LLMC_TERMINAL_CHAT_H
#define LLMC_TERMINAL_CHAT_H

#include "../base/error.h"         /* Error, error_set, xrealloc */
#include "../base/line_editor.h"   /* LineEditor, line_editor_close, line_editor_open, line_editor_read */
#include "../base/options.h"       /* option_choice_index */
#include "../base/program.h"       /* program_signal, program_stopping, program_catch */
#include "../base/text.h"          /* token_list_extend, TokenList, token_list_free, TextBuffer, ... */
#include "../model/model.h"        /* Model, model_set_longest */
#include "../model/model_text.h"   /* ModelText */
#include "../rollout/episodes.h"   /* Episodes */
#include "../rollout/prompts.h"    /* PromptText */
#include "../rollout/rollout.h"    /* Completion, Rollout, RolloutRequest, Sampling, ... */
#include "../rollout/sequence.h"   /* Sequence, sequence_free, sequence_new, sequence_set */
#include "../rollout/trajectory.h" /* STOP_TOOL_FAILED, STOP_COMPLETED, Trajectory */
#include "../text/chat.h"          /* chat_find_section */
#include "answer.h"                /* AnswerTurns, AnswerEnd, answer_run, answer_tell_end, ... */
#include "conversation.h"          /* Conversation, conversation_remove, conversation_add, conversation_system, ... */
#include "printer.h"               /* Printer, printer_end, printer_open */

typedef struct Chat {
    /* set by the caller */
    const Model *model;
    const ModelText *text;
    const Sampling *how;
    Episodes *episodes;    /* the tools; NULL: none */
    const json_t *schemas; /* of the tools, for a template that shows them; NULL: they are not shown */
    int32_t length;        /* maximum tokens of the conversation, at most the model's context */
    /* set by chat_open() */
    Conversation talk;
    TokenList ids;     /* what the model reads */
    Sequence sequence; /* without tools */
    Rollout engine;    /* with tools */
    TokenList cached;  /* the tokens whose keys and values are in its cache */
    uint64_t turn;     /* number of the answer */
} Chat;

/* ---- the tokens of the conversation ---------------------------------------------------------------------------- */

/* Sets c->ids. Removes the oldest turns if the conversation leaves too little room for an answer. Fails if the last message
 * alone is too long. */
static inline bool chat_fit(Chat *c, Error *e) {
    Conversation *t = &c->talk;
    const int64_t quarter = c->length / 4, room = c->how->max_new < quarter ? c->how->max_new : quarter;
    int dropped = 0;
    for (;;) {
        if (!conversation_encode(t, &c->ids, e)) return false;
        if (c->ids.count + (room > 1 ? room : 1) <= c->length) break;
        if (t->count - t->kept < 3) { /* a single message: any room is enough */
            if (c->ids.count < c->length) break;
            return error_set(e, "the prompt has %d tokens, at most %d fit the %s of %d", c->ids.count, c->length - 1,
                             c->length < c->model->config.context ? "length" : "model's context", c->length);
        }
        conversation_remove(t, t->kept, 2);
        dropped += 2;
    }
    if (dropped)
        fprintf(stderr, "[the conversation exceeds the %s of %d tokens: the oldest %d messages were removed]\n",
                c->length < c->model->config.context ? "length" : "context", c->length, dropped);
    return true;
}

/* The number of leading tokens of the conversation that are in the cache; the last one is always run. */
static inline int32_t chat_cached(const Chat *c) {
    int32_t same = 0;
    while (same < c->ids.count - 1 && same < c->cached.count && c->ids.ids[same] == c->cached.ids[same]) same++;
    return same;
}

/* ---- answers --------------------------------------------------------------------------------------------------- */

/* Says that a signal stopped the answer, if one did. Ctrl-C goes no further. */
static inline bool chat_was_stopped(void) {
    if (*program_signal() != SIGINT) return program_stopping();
    *program_signal() = 0;
    fputs("[stopped]\n", stderr);
    return true;
}

/* Samples the answer of one turn, prints it and adds it to the conversation. */
static inline bool chat_answer(Chat *c, Error *e) {
    Printer p = printer_open(&c->text->tokenizer);
    TextBuffer said = {0};
    AnswerEnd end;
    sequence_set(&c->sequence, c->ids.ids, c->ids.count);
    text_clear(&said);
    if (!answer_run(&c->sequence, c->how, c->turn++, &p, &said, &end, e) || !printer_end(&p, e)) return false;
    if (!chat_was_stopped() && !end.finished)
        fprintf(stderr, "[truncated after %lld tokens: %s]\n", (long long)end.drawn,
                end.drawn < c->how->max_new ? "the context is full" : "--max-new-tokens");
    conversation_add(&c->talk, "assistant", said.text);
    text_free(&said);
    return true;
}

/* Adds a completion of several turns to the conversation, and notes what is in the cache. */
static inline void chat_keep(Chat *c, const Completion *got) {
    Conversation *t = &c->talk;
    const json_t *messages = got->trajectory->messages, *last = json_array_get(messages, json_array_size(messages) - 1);
    const char *text = json_string_value(json_object_get(last, "content"));
    const bool ended = got->count && sampling_is_stop(c->how, got->tokens[got->count - 1]);
    conversation_add(t, "assistant", text ? text : "");
    ConversationAnswer *answer = &t->answers[t->count - 1];
    answer->messages = json_incref((json_t *)messages);
    token_list_extend(&answer->ids, got->tokens, got->count - ended);
    c->cached.count = 0;
    token_list_extend(&c->cached, c->ids.ids, c->ids.count);
    token_list_extend(&c->cached, got->tokens, got->trajectory->cached);
}

/* Says why an answer ended if the model did not complete it. */
static inline void chat_tell_end(const Chat *c, const AnswerTurns *a, const Trajectory *y) {
    if (chat_was_stopped() || y->stop == STOP_COMPLETED) return;
    answer_tell_end(a, y, y->stop == STOP_TOOL_FAILED ? c->episodes->programs.why.text : NULL);
}

/* Samples an answer whose turns may call tools, prints it and adds it to the conversation. A tool that fails ends the answer,
 * not the chat. */
static inline bool chat_answer_with_tools(Chat *c, Error *e) {
    AnswerTurns a;
    Completion got = {0};
    const PromptText what = {
        .text = c->talk.messages[c->talk.count - 1].content, .task = "", .answer = "", .fields = ""};
    RolloutRequest q = {.prompt = c->ids.ids,
                        .prompt_len = c->ids.count,
                        .cached = chat_cached(c),
                        .samples = 1,
                        .id = c->turn++,
                        .out = &got,
                        .record = &what};
    answer_turns_open(&a, &c->text->tokenizer, c->how, &c->episodes->turns);
    c->engine.turns = &a.turns;
    bool ok = answer_turns_run(&a, &c->engine, &q, e);
    if (!ok && got.trajectory && got.trajectory->stop == STOP_TOOL_FAILED && !a.failed) ok = true;
    if (ok) {
        chat_tell_end(c, &a, got.trajectory);
        chat_keep(c, &got);
    }
    completion_free(&got);
    answer_turns_close(&a);
    return ok;
}

/* Answers the conversation. A message that does not fit is removed. */
static inline bool chat_turn(Chat *c, Error *e) {
    Error why;
    if (chat_fit(c, &why)) return c->episodes ? chat_answer_with_tools(c, e) : chat_answer(c, e);
    fprintf(stderr, "[%s]\n", why.text);
    conversation_remove(&c->talk, c->talk.count - 1, 1);
    return true;
}

/* ---- lines ----------------------------------------------------------------------------------------------------- */

/* A signal ends the wait for a line; at other times it only requests that generation stop. */
static inline void chat_signals(bool waiting) {
    program_catch(SIGINT, waiting ? 0 : SA_RESTART);
    program_catch(SIGTERM, waiting ? 0 : SA_RESTART);
}

/* Reads a line from a terminal or a file into *line, with its newline. Returns its length, or -1. */
static inline ssize_t chat_line(LineEditor *editor, char **line, size_t *size) {
    if (!editor->edit) return getline(line, size, stdin);
    const char *edited = line_editor_read(editor);
    if (!edited) return -1;
    const size_t n = strlen(edited);
    *line = (char *)xrealloc(*line, n + 1, 1);
    *size = n + 1;
    strcpy(*line, edited);
    return (ssize_t)n;
}

/* Reads a line, without its newline. Returns -1 at the end of the input or after a signal to end, -2 if it cannot be read.
 * Ctrl-C starts a new line. */
static inline ssize_t chat_read(LineEditor *editor, char **line, size_t *size, Error *e) {
    const bool terminal = isatty(STDIN_FILENO);
    for (;;) {
        if (*program_signal() == SIGINT) *program_signal() = 0; /* it arrived after the completion had ended */
        if (program_stopping()) return -1;
        if (terminal && !editor->edit) fputs("> ", stderr);
        chat_signals(true);
        errno = 0;
        ssize_t n = chat_line(editor, line, size);
        const bool interrupted = n < 0 && (errno == EINTR || *program_signal() == SIGINT);
        chat_signals(false);
        if (program_stopping() && *program_signal() != SIGINT) return -1;
        if (interrupted) {
            clearerr(stdin);
            fputs("\n[Ctrl-D ends]\n", stderr);
            continue;
        }
        if (n < 0 && ferror(stdin)) {
            error_set(e, "standard input: cannot read: %s", strerror(errno));
            return -2;
        }
        if (n < 0) {
            if (terminal) fputc('\n', stderr);
            return -1;
        }
        if (n && (*line)[n - 1] == '\n') (*line)[--n] = 0;
        if (n && (*line)[n - 1] == '\r') (*line)[--n] = 0;
        return n;
    }
}

/* Checks a text from the user: it must be UTF-8 without NUL characters. */
static inline bool chat_check_text(const char *text, size_t n, Error *e) {
    const size_t valid = utf8_valid(text, n), length = strlen(text);
    if (valid < n) return error_set(e, "byte %zu is not UTF-8", valid + 1);
    return length == n || error_set(e, "byte %zu is NUL, expected text", length + 1);
}

/* ---- commands -------------------------------------------------------------------------------------------------- */

/* Sets the system message; an empty one removes it. */
static inline void chat_system(Chat *c, const char *text) {
    Error e;
    if (*text && !chat_find_section(&c->text->chat, "system", &e)) {
        fprintf(stderr, "[%s]\n", e.text);
        return;
    }
    conversation_system(&c->talk, text);
    fprintf(stderr, "[the system message was %s]\n", *text ? "set" : "removed");
}

/* Writes the conversation as a line of JSON that make_shard reads. */
static inline void chat_save(const Chat *c, const char *path) {
    Error e;
    const Conversation *t = &c->talk;
    size_t n;
    if (!*path || t->count == t->kept)
        fprintf(stderr, "[%s]\n", *path ? "there is nothing to save yet" : "/save needs the name of a file");
    else if (conversation_save(t, path, &n, &e)) fprintf(stderr, "[%zu messages were written to %s]\n", n, path);
    else fprintf(stderr, "[%s]\n", e.text);
}

/* Removes the last answer. Returns whether its question is to be answered again. */
static inline bool chat_retry(Chat *c) {
    Conversation *t = &c->talk;
    const bool any = t->count > t->kept && !strcmp(t->messages[t->count - 1].role, "assistant");
    if (any) conversation_remove(t, t->count - 1, 1);
    else fputs("[there is no answer yet]\n", stderr);
    return any;
}

static inline void chat_help(void) {
    fputs("/help          this list\n"
          "/system TEXT   sets the system message; without TEXT there is none\n"
          "/retry         samples the last answer again\n"
          "/reset         starts a new conversation\n"
          "/save FILE     writes the conversation as a line of JSON for make_shard\n"
          "Ctrl-C stops an answer, Ctrl-D ends. A message that begins with / needs a blank before it.\n",
          stderr);
}

/* Carries out a command. Returns whether the last message is to be answered. */
static inline bool chat_command(Chat *c, const char *line) {
    const size_t n = strcspn(line, " ");
    const char *argument = line + n + strspn(line + n, " ");
    switch (option_choice_index("/help|/system|/retry|/reset|/save", n < 16 ? strndupa(line, n) : "")) {
    case 0: chat_help(); return false;
    case 1: chat_system(c, argument); return false;
    case 2: return chat_retry(c);
    case 3:
        conversation_remove(&c->talk, c->talk.kept, c->talk.count - c->talk.kept);
        fputs("[the conversation was reset]\n", stderr);
        return false;
    case 4: chat_save(c, argument); return false;
    default: fprintf(stderr, "[%.*s is no command; /help lists them]\n", (int)n, line); return false;
    }
}

/* ---- the chat -------------------------------------------------------------------------------------------------- */

static inline void chat_close(Chat *c) {
    conversation_free(&c->talk);
    token_list_free(&c->ids), token_list_free(&c->cached);
    sequence_free(&c->sequence), rollout_free(&c->engine);
}

/* Opens the engine for answers with tools. */
static inline bool chat_open_tools(Chat *c, Error *e) {
    if (c->episodes->text >= 0)
        return error_set(e, "--tool-cmd: its program answers the model's turns, which in a chat a person does");
    if (c->episodes->turns.open)
        return error_set(
            e, "--tool-cmd: its program shows something before the model's first turn (\"opening\"), which in a "
               "chat a person writes");
    c->talk.tools = true;
    c->talk.schemas = c->schemas;
    model_set_longest(c->model, c->length);
    return rollout_new_lone(&c->engine, c->model, 1, c->length, e);
}

/* system: the system message, or NULL. */
static inline bool chat_open(Chat *c, const char *system, Error *e) {
    Error why;
    c->talk = (Conversation){.text = c->text};
    if (!(c->episodes ? chat_open_tools(c, e) : sequence_new(&c->sequence, c->model, c->length, e))) return false;
    if (!chat_find_section(&c->text->chat, "user", e)) return false;
    if (system && !chat_find_section(&c->text->chat, "system", &why)) return error_set(e, "--system: %s", why.text);
    if (system) conversation_system(&c->talk, system);
    return true;
}

/* Answers messages until the input ends or a signal comes. */
static inline bool chat_run(Chat *c, Error *e) {
    LineEditor editor;
    char *line = NULL;
    size_t size = 0;
    ssize_t n;
    bool ok = true;
    line_editor_open(&editor, "> ");
    while (ok && (n = chat_read(&editor, &line, &size, e)) >= 0) {
        Error why;
        if (!n) continue;
        if (!chat_check_text(line, (size_t)n, &why)) {
            fprintf(stderr, "[%s]\n", why.text);
            continue;
        }
        if (*line != '/') conversation_add(&c->talk, "user", line);
        else if (!chat_command(c, line)) continue;
        ok = chat_turn(c, e);
    }
    line_editor_close(&editor);
    free(line);
    return ok && n != -2;
}

#endif
