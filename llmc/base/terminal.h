/* terminal.h - the width of a terminal, whether it has colours, and text that is wrapped to a width.
 *
 *     const int width = terminal_width(STDOUT_FILENO);
 *     const bool colours = terminal_colors(STDOUT_FILENO);
 *     fputs("  --seed N   ", stdout);
 *     terminal_wrap(stdout, "random seed (default: 42)", 13, 13, width);   // from column 13 on, further lines too
 *
 * The width is COLUMNS if it is set, else the terminal's; 80 if the stream is not a terminal. There are no colours if
 * the stream is not a terminal, if NO_COLOR is set and not empty (no-color.org), or if TERM is dumb or not set.
 */
#ifndef LLMC_BASE_TERMINAL_H
#define LLMC_BASE_TERMINAL_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { TERMINAL_WIDTH = 80, TERMINAL_NARROWEST = 40, TERMINAL_WIDEST = 1000 };

/* The number of columns of the stream with this descriptor, from TERMINAL_NARROWEST to TERMINAL_WIDEST. */
static inline int terminal_width(int fd) {
    const char *columns = getenv("COLUMNS");
    struct winsize window;
    int width = columns ? atoi(columns) : 0;
    if (width <= 0 && isatty(fd) && !ioctl(fd, TIOCGWINSZ, &window)) width = window.ws_col;
    if (width <= 0) return TERMINAL_WIDTH;
    return width < TERMINAL_NARROWEST ? TERMINAL_NARROWEST : width > TERMINAL_WIDEST ? TERMINAL_WIDEST : width;
}

/* Whether the stream is a terminal that understands escape sequences. */
static inline bool terminal_escapes(int fd) {
    const char *kind = getenv("TERM");
    return isatty(fd) && kind && *kind && strcmp(kind, "dumb");
}

/* Whether the stream is a terminal that should show colours. */
static inline bool terminal_colors(int fd) {
    const char *no = getenv("NO_COLOR");
    return terminal_escapes(fd) && (!no || !*no);
}

/* The number of columns of the first n bytes of UTF-8 text: one for each character. */
static inline int terminal_columns(const char *text, size_t n) {
    int columns = 0;
    for (size_t i = 0; i < n; i++) columns += ((unsigned char)text[i] & 0xC0) != 0x80;
    return columns;
}

/* Prints text from column `column` on, broken at spaces and after `|` so that no line is longer than `width`, and a
 * newline. Further lines begin at column `indent`. A word that is longer than a line is not broken. */
static inline void terminal_wrap(FILE *f, const char *text, int column, int indent, int width) {
    int at = column; /* columns of this line so far */
    bool first = true;
    while (*text) {
        const size_t spaces = strspn(text, " "), plain = strcspn(text + spaces, " |");
        const size_t n = plain + (text[spaces + plain] == '|');
        const int word = terminal_columns(text + spaces, n);
        if (!first && at + (int)spaces + word > width) {
            fprintf(f, "\n%*s", indent, "");
            at = indent;
        } else {
            fprintf(f, "%*s", (int)spaces, "");
            at += (int)spaces;
        }
        fwrite(text + spaces, 1, n, f);
        at += word;
        text += spaces + n;
        first = false;
    }
    fputc('\n', f);
}

#endif
