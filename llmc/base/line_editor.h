/* line_editor.h - lines from a terminal, edited by libedit: arrow keys, history, emacs or vi keys as in ~/.editrc.
 *
 *     LineEditor l;
 *     if (line_editor_open(&l, "> ")) {                 // false: standard input or error is no such terminal
 *         const char *line = line_editor_read(&l);      // NULL at the end of the input or after a signal
 *         line_editor_close(&l);
 *     }
 *
 * The prompt and the line are written to standard error. A signal that program_stopping() reports ends the wait for a
 * line, if its handler was installed without SA_RESTART. A program that includes this header is linked with -ledit.
 */
#ifndef LLMC_BASE_LINE_EDITOR_H
#define LLMC_BASE_LINE_EDITOR_H

#include "error.h"                 /* checked_object */
#include "program.h"               /* program_stopping */
#include "terminal.h"              /* terminal_escapes */
#define Tokenizer LibeditTokenizer /* the name is taken by text/tokenizer.h */
#include <histedit.h>
#undef Tokenizer
#include <locale.h>
#include <poll.h>
#include <wchar.h>

typedef struct LineEditor {
    EditLine *edit;
    History *history;
    HistEvent event;
    const char *prompt;
} LineEditor;

static inline char *line_editor_prompt(EditLine *edit) {
    LineEditor *l = NULL;
    el_get(edit, EL_CLIENTDATA, &l);
    return (char *)l->prompt;
}

/* Reads one character, as libedit's own function does, but ends at a signal. Returns 1, 0 at the end, -1 at a signal. It waits
 * for at most 100 ms at a time: a signal that comes between the check and the wait would be noticed by nothing else. */
static inline int line_editor_character(EditLine *edit, wchar_t *character) {
    mbstate_t state = {0};
    (void)edit;
    while (!program_stopping()) {
        char byte;
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        const int ready = poll(&input, 1, 100);
        if (!ready) continue;
        const ssize_t n = ready < 0 ? -1 : read(STDIN_FILENO, &byte, 1);
        if (!n) return 0;
        if (n < 0 && errno != EINTR) return -1;
        if (n < 0) continue;
        const size_t length = mbrtowc(character, &byte, 1, &state);
        if (length == (size_t)-1) memset(&state, 0, sizeof state); /* not a character: left out */
        else if (length != (size_t)-2) return 1;
    }
    return -1;
}

/* Opens an editor if standard input and standard error are a terminal with escape sequences. */
static inline bool line_editor_open(LineEditor *l, const char *prompt) {
    *l = (LineEditor){.prompt = prompt};
    if (!isatty(STDIN_FILENO) || !terminal_escapes(STDERR_FILENO)) return false;
    if (!setlocale(LC_CTYPE, "") || MB_CUR_MAX == 1) setlocale(LC_CTYPE, "C.UTF-8");
    l->edit = el_init(program_invocation_short_name, stdin, stderr, stderr);
    if (!l->edit) return false;
    l->history = (History *)checked_object(history_init(), "a history of lines");
    history(l->history, &l->event, H_SETSIZE, 1000);
    history(l->history, &l->event, H_SETUNIQUE, 1);
    el_set(l->edit, EL_CLIENTDATA, l);
    el_set(l->edit, EL_PROMPT, line_editor_prompt);
    el_set(l->edit, EL_EDITOR, "emacs");
    el_set(l->edit, EL_HIST, history, l->history);
    el_set(l->edit, EL_GETCFN, line_editor_character);
    el_source(l->edit, NULL);
    return true;
}

/* Returns the next line with its newline, which is valid until the next call, and adds it to the history. The terminal gives
 * single keys before the prompt is shown: a Ctrl-D that is typed before would arrive as a NUL character. */
static inline const char *line_editor_read(LineEditor *l) {
    int n = 0;
    el_set(l->edit, EL_PREP_TERM, 1);
    const char *line = el_gets(l->edit, &n);
    if (!line || n <= 0) return NULL;
    if (line[0] != '\n') history(l->history, &l->event, H_ENTER, line);
    return line;
}

static inline void line_editor_close(LineEditor *l) {
    if (l->edit) el_end(l->edit);
    if (l->history) history_end(l->history);
    *l = (LineEditor){0};
}

#endif
